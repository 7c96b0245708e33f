"""exp_what_it_looks_at：两种归因与直接的算法相同；按次序删词、数词、种词弄坏了测试就变红；出错时一句中文。

运行：python -m pytest ch06/tests/test_what_it_looks_at.py
用随机的小模型，不需要 SmolLM2。
"""

import importlib.util
import random
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parent.parent / "experiments" / "exp_what_it_looks_at.py"
LLAMA = {"vocab_size": 97, "context_length": 32, "emb_dim": 16, "n_heads": 4, "n_layers": 3, "hidden_dim": 24, "n_kv_groups": 2, "rope_base": 10_000, "rope_freq": None, "norm_eps": 1e-5}
GPT = {"vocab_size": 97, "context_length": 32, "emb_dim": 16, "n_heads": 4, "n_layers": 3, "drop_rate": 0.0, "qkv_bias": False}


def load(path=SCRIPT):
    spec = importlib.util.spec_from_file_location("exp_what_it_looks_at", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def module():
    return load()


def encoder(ns, kind="LlamaModel"):
    """切掉后面的层的小模型，和一个随便的分类器。"""
    torch.manual_seed(0)
    model = getattr(ns, kind)(LLAMA if kind == "LlamaModel" else GPT)
    model.trf_blocks, model.final_norm, model.out_head = model.trf_blocks[:2], torch.nn.Identity(), torch.nn.Identity()
    model.eval().requires_grad_(False)
    x = torch.randn(30, 16) * torch.arange(1, 17) + 3
    return model, ns.Probe(x, x[:, 3].sub(3).sign())


IDS = [5, 9, 9, 31, 2, 77, 14]


def after_embedding(ns, model, embedded):
    """从嵌入起往后算：钩子把嵌入层的输出换掉。"""
    hook = model.tok_emb.register_forward_hook(lambda *_: embedded)
    try:
        return model(torch.zeros(embedded.shape[:2], dtype=torch.long))
    finally:
        hook.remove()


# ---- 每条检查返回成立吗；弄坏代码之后，它必须不成立 ----


def gradient_right(ns):
    """每个词元的嵌入放大、缩小一点点，双精度的差分，与归因相同。"""
    for kind in ("LlamaModel", "GPTModel"):
        model, probe = encoder(ns, kind)
        ours, embedded, slopes = ns.gradient_x_input(model, probe, IDS), model.tok_emb.weight[IDS][None], []
        for i in range(len(IDS)):
            moved = []
            for factor in (1.01, 0.99):
                scale = torch.ones(1, len(IDS), 1)
                scale[0, i] = factor
                moved.append(probe(after_embedding(ns, model, embedded * scale).mean(dim=1)).item())
            slopes.append((moved[0] - moved[1]) / 0.02)
        if not torch.allclose(ours, torch.tensor(slopes), atol=2e-3 * max(map(abs, slopes)) + 1e-4):
            return False
    return not model.tok_emb._forward_hooks and all(param.grad is None for param in model.parameters())


def occlusion_right(ns):
    model, probe = encoder(ns)
    found = ns.occlusion(model, IDS)
    alone = [model(torch.tensor([ids]))[0].sum(dim=0) / len(ids) for ids in (IDS, *(IDS[:i] + IDS[i + 1 :] for i in range(len(IDS))))]
    return found.shape == (8, 16) and torch.allclose(found, torch.stack(alone), atol=1e-5)


def probe_right(ns):
    """权重与直接解岭回归的相同：(XᵀX + λI)⁻¹Xᵀy，偏置当作恒为 √c 的一维。"""
    torch.manual_seed(1)
    x, answers = torch.randn(20, 6) * torch.tensor([1.0, 5, 1, 9, 1, 2]) + 4, torch.tensor([1.0, 1.0, 1.0, -1.0] * 5)
    probe = ns.Probe(x, answers)
    z = ((x - x.mean(dim=0)) / x.std(dim=0)).double()
    size = z.square().sum(dim=1).mean()
    full = torch.cat([z / size.sqrt(), torch.ones(20, 1, dtype=torch.float64)], dim=1)
    _, penalty, _ = ns.learn(full @ full.T, answers.double())
    solved = torch.linalg.solve(full.T @ full + penalty * torch.eye(7, dtype=torch.float64), full.T @ answers.double())
    new = torch.randn(9, 6)
    expected = torch.cat([(new - x.mean(dim=0)) / x.std(dim=0) / size.float().sqrt(), torch.ones(9, 1)], dim=1) @ solved.float()
    return torch.allclose(probe(new), expected, atol=1e-4)


def deleted_right(ns):
    scores, ids = torch.tensor([0.1, 0.9, -0.5, 0.8, 0.2, 0.7, -2.0]), IDS
    some = [ns.deleted(ids, scores, 0.3), ns.deleted(ids, scores, 0.01), ns.deleted(ids, scores, 1.0), ns.deleted([4, 5], torch.tensor([1.0, 2.0]), 0.9)]
    return some == [[5, 9, 2, 77, 14], [5, 9, 31, 2, 77, 14], [14], [4]]


def log_odds_right(ns):
    found = ns.log_odds([[1, 1, 2], [1, 3], [2, 4], [4, 4]], torch.tensor([1.0, 1.0, -1.0, -1.0]), 6)
    return torch.allclose(found, torch.tensor([1.0, 3.0, 1.0, 2.0, 1 / 3, 1.0]).log())


def plant_right(ns):
    messages = [[i] * (i + 1) for i in range(40)]
    changed, places = ns.plant(messages, [91, 92], random.Random(1))
    back = [ids[:place] + ids[place + 2 :] for ids, place in zip(changed, places)]
    middle = sum(0 < place < len(ids) for ids, place in zip(messages, places))
    return back == messages and all(ids[place : place + 2] == [91, 92] for ids, place in zip(changed, places)) and middle > 20


CHECKS = [gradient_right, occlusion_right, probe_right, deleted_right, log_odds_right, plant_right]
MUTANTS = [
    ("(embedded.grad * embedded).sum(dim=-1)", "embedded.grad.sum(dim=-1)", gradient_right),
    ("(embedded.grad * embedded).sum(dim=-1)", "embedded.grad.norm(dim=-1)", gradient_right),
    ("(embedded.grad * embedded).sum(dim=-1)", "(embedded.grad * embedded).mean(dim=-1)", gradient_right),
    ("probe(model(torch.tensor([ids])).mean(dim=1)).sum().backward()", "probe(model(torch.tensor([ids]))[:, -1]).sum().backward()", gradient_right),
    ("ids[:i] + ids[i + 1 :] for i", "ids[: i + 1] + ids[i + 1 :] for i", occlusion_right),
    ("ids[:i] + ids[i + 1 :] for i", "ids[:i] + [0] + ids[i + 1 :] for i", occlusion_right),
    ("model(torch.tensor([messages[i] for i in part])).mean(dim=1)", "model(torch.tensor([messages[i] for i in part]))[:, -1]", occlusion_right),
    ("return (x - self.mean) / self.std @ self.weight + self.bias", "return (x - self.mean) @ self.weight + self.bias", probe_right),
    ("self.weight = x.T @ alpha.float() / size", "self.weight = x.T @ alpha.float()", probe_right),
    ("self.bias = alpha.sum().float()", "self.bias = alpha.mean().float()", probe_right),
    ("scores.topk(count).indices", "(-scores).topk(count).indices", deleted_right),
    ("max(1, round(fraction * len(ids)))", "round(fraction * len(ids))", deleted_right),
    (", len(ids) - 1)", ", len(ids))", deleted_right),
    ("torch.log((counts[1] + 1) / (counts[0] + 1))", "torch.log((counts[0] + 1) / (counts[1] + 1))", log_odds_right),
    ("torch.log((counts[1] + 1) / (counts[0] + 1))", "torch.log(counts[1] / counts[0])", log_odds_right),
    ("list(set(ids))] += 1", "list(set(ids))[:1]] += 1", log_odds_right),
    ("rng.randint(0, len(ids)) for ids", "0 for ids", plant_right),
    ("ids[:place] + token + ids[place:]", "ids[:place] + token + ids[place + 1 :]", plant_right),
]


@pytest.mark.parametrize("right", CHECKS, ids=lambda right: right.__name__)
def test_right(module, right):
    assert right(module)


@pytest.mark.parametrize("old, new, right", MUTANTS, ids=range(len(MUTANTS)))
def test_broken_scripts_are_caught(tmp_path, old, new, right):
    text = SCRIPT.read_text(encoding="utf-8")
    assert text.count(old) == 1, old
    folder = tmp_path / "ch06" / "experiments"
    folder.mkdir(parents=True)
    (tmp_path / "setup").mkdir()
    for name in ("data", "downloads"):
        (tmp_path / "setup" / name).symlink_to(SCRIPT.parents[2] / "setup" / name)
    (folder / SCRIPT.name).write_text(text.replace(old, new), encoding="utf-8")
    try:
        assert not right(load(folder / SCRIPT.name))
    except (RuntimeError, IndexError, ValueError):
        pass  # 形状对不上，也算抓到了


def test_planted_word_is_found_when_it_is_the_only_cue(module):
    """词元的平均就是向量（没有 Transformer）：插的词是唯一的线索，两种归因都把它排第一。"""

    class Bag(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(3)
            self.tok_emb = torch.nn.Embedding(60, 48)

        def forward(self, ids):
            return self.tok_emb(ids)

    class Tokens:
        def encode_ordinary(self, text):
            return [59]

    model, rng = Bag().eval().requires_grad_(False), random.Random(0)
    ham = [[rng.randrange(59) for _ in range(rng.randint(4, 10))] for _ in range(module.LABELLED + 20)]
    found = module.find_planted(("bag", model, Tokens()), ham, 1)
    assert found["right"] > 0.9 and found["梯度 × 输入"] > 0.8 and found["遮挡"] > 0.8


def run(module, monkeypatch, capsys, tmp_path, *arguments):
    monkeypatch.setattr(module, "OUTPUTS", tmp_path / "outputs")
    monkeypatch.setattr(sys, "argv", ["exp_what_it_looks_at.py", *arguments])
    code = 0
    try:
        module.main()
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def test_quick(module, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("LLM_DATA_DIR", "")
    code, out, _ = run(module, monkeypatch, capsys, tmp_path, "--quick")
    assert code == 0 and "不下结论" in out and "✗" not in out and out.count("✓") == 4 and "更准" not in out
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["what_it_looks_at_quick.png"]


def test_my_own_message(module, monkeypatch, capsys, tmp_path):
    code, out, _ = run(module, monkeypatch, capsys, tmp_path, "--quick", "--text", "You have won a $1000 prize, call now")
    assert code == 0 and "分数 " in out and out.count("prize") == 2 and not (tmp_path / "outputs").exists()
    for text in ("", "a"):
        code, _, error = run(module, monkeypatch, capsys, tmp_path, "--quick", "--text", text)
        assert code == 2 and "太短" in error.splitlines()[-1]


def test_bad_seed_is_one_sentence(module, monkeypatch, capsys, tmp_path):
    code, _, error = run(module, monkeypatch, capsys, tmp_path, "--seed", "-1")
    assert code == 2 and "--seed" in error.splitlines()[-1] and "Traceback" not in error
