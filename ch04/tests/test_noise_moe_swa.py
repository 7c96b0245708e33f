"""exp_moe、exp_moe_balance、exp_swa、exp_swa_sinks：自己与自己比，不应分出假的高下；各脚本自己的组件对不对。

同一个结构（或数学上相同的两个：一个专家的 MoE 与密集的、放得下整句的窗口与全看），种子各不相同，照着实验的比法比，几乎全应是"分不出"。
运行：python -m pytest ch04/tests/test_noise_moe_swa.py
"""

import functools
import importlib.util
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parent.parent / "experiments"
TEXT = FOLDER.parent.parent / "setup" / "data" / "story-en.txt"
TINY = {"emb_dim": 16, "n_heads": 2, "n_layers": 1}


@functools.cache
def load(name):
    """按路径导入一个实验。"""
    spec = importlib.util.spec_from_file_location(f"exp_{name}", FOLDER / f"exp_{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """故事的前八分之一：验证集短，训练才快。"""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT.read_text(encoding="utf-8")[:2560], encoding="utf-8")
    return str(path)


@pytest.fixture
def one_thread():
    """矩阵这么小，几个线程只会互相等。"""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def false_verdicts(module, first, second, picks, times=4):
    """两方各随便挑五个，配成五对来比，每个数比 times 次：假的高下有几次，一共几次。"""
    verdicts = []
    for pick in picks:
        for turn in range(times):
            chance = random.Random(turn)
            pairs = zip(chance.sample(first, 5), chance.sample(second, 5))
            verdicts.append(module.verdict([pick(a) - pick(b) for a, b in pairs]))
    return sum(each != "分不出" for each in verdicts), len(verdicts)


# ---------- 自己与自己比 ----------


def test_one_expert_against_dense(text, monkeypatch, one_thread):
    """一个专家的 MoE 与密集的前馈网络，数学上是同一个；种子不同。"""
    module = load("moe")
    monkeypatch.setattr(module, "CONFIG", module.CONFIG | TINY)
    dense = [module.train_once(text, 0, 1, 16, 0.0, 40, seed) for seed in range(10)]
    single = [module.train_once(text, 1, 1, 16, 0.01, 40, seed) for seed in range(100, 110)]
    wrong, total = false_verdicts(module, single, dense, [lambda curve: module.milestones(curve)[0], lambda curve: module.milestones(curve)[1]])
    assert total >= 8 and wrong <= 1
    assert module.verdict([curve[-1][1] - curve[0][1] for curve in dense[:5]]) == "更低"  # 真的不同的还分得出


def test_no_balancing_against_itself(text, monkeypatch, one_thread):
    """偏置的步子是 0、均衡损失的权重是 0，都是「不管」：损失、最忙的专家、扔掉的比例。"""
    module = load("moe_balance")
    monkeypatch.setattr(module, "CONFIG", module.CONFIG | TINY)
    results = [module.train_once(text, 4, 2, 0, 0.0, 0.0, 40, seed) for seed in range(14)]
    picks = [
        lambda each: module.milestones(each["curve"])[1],
        lambda each: torch.tensor(each["loads"])[-8:].mean(dim=0).max().item() * 4,
        lambda each: each["capacity"][2][0],
    ]
    wrong, total = false_verdicts(module, results[:7], results[7:], picks)
    assert total >= 8 and wrong <= 1


def test_wide_window_against_full(text, monkeypatch, one_thread):
    """窗口放得下整句的，与全看的：种子相同就逐步相同，种子不同就分不出；回忆也一样。"""
    module = load("swa")
    monkeypatch.setattr(module, "CONFIG", module.CONFIG | {"emb_dim": 16, "n_heads": 2})
    full = [module.train_once(text, 1, 32, 0, 40, seed) for seed in range(10)]
    wide = [module.train_once(text, 1, 32, -1, 40, seed) for seed in range(100, 110)]
    wrong, total = false_verdicts(module, wide, full, [lambda curve: module.milestones(curve)[0], lambda curve: module.milestones(curve)[1]])
    recall = [[module.recall_once(1, 32, stride, 20, seed) for seed in range(start, start + 8)] for stride, start in ((0, 0), (-1, 100))]
    more, again = false_verdicts(module, *recall, [lambda each: each])
    assert total + again >= 8 and wrong + more <= 1
    same = module.train_once(text, 1, 32, -1, 40, 0)
    assert all(abs(a - b) < 1e-4 for (_, a), (_, b) in zip(same, full[0]))


def test_sinks_against_themselves(text, monkeypatch, one_thread):
    """同样的留法，种子不同的两组模型。"""
    module = load("swa_sinks")
    monkeypatch.setattr(module, "CONFIG", module.CONFIG | TINY)
    results = [module.train_once(text, 8, 40, seed) for seed in range(14)]
    wrong, total = false_verdicts(module, results[:7], results[7:], [lambda each, i=i: each["losses"][i] - each["losses"][0] for i in (1, 2, 4)])
    assert total >= 8 and wrong <= 1


# ---------- 组件 ----------


def expert_layer(**changes):
    torch.manual_seed(1)
    return load("moe_balance").MoEFeedForward({"emb_dim": 32, "hidden_dim": 24, "num_experts": 8, "num_experts_per_tok": 2, "shared": False} | changes)


def test_balance_layer_starts_as_the_plain_one():
    """偏置是 0、不限容量、没有共享专家：与 exp_moe 的相同；有共享专家，就多加它的输出。"""
    x = torch.randn(2, 10, 32)
    for changes in ({}, {"num_experts_per_tok": 1, "norm_topk_prob": False}):
        ours = expert_layer(**changes)
        plain = load("moe").MoEFeedForward({"emb_dim": 32, "hidden_dim": 24, "num_experts": 8, "num_experts_per_tok": 2} | changes)
        plain.load_state_dict({key: value for key, value in ours.state_dict().items() if key != "bias"})
        assert torch.equal(ours(x), plain(x)) and torch.equal(ours.load, plain.load) and ours.balance_loss == plain.balance_loss and ours.dropped == 0
    shared = expert_layer(shared=True)
    plain.load_state_dict({key: value for key, value in shared.state_dict().items() if key != "bias" and "shared" not in key})
    plain.num_experts_per_tok, plain.norm_topk_prob = 2, True
    assert torch.allclose(shared(x), plain(x) + shared.shared(x), atol=1e-6)


def test_bias_only_changes_who_is_chosen():
    layer, x = expert_layer(num_experts_per_tok=1, norm_topk_prob=False), torch.randn(2, 10, 32)
    layer.bias[3] = 5.0
    share = torch.softmax(layer.gate(x), dim=-1)[..., 3:4]
    expected = share * layer.fc3[3](torch.nn.functional.silu(layer.fc1[3](x)) * layer.fc2[3](x))
    assert torch.allclose(layer(x), expected, atol=1e-6) and layer.load.tolist() == [0, 0, 0, 1, 0, 0, 0, 0]
    assert "bias" in layer.state_dict() and "bias" not in dict(layer.named_parameters())


def test_bias_moves_against_the_load():
    module, loads = load("moe_balance"), []
    model = module.build(30, 8, 2, True, False, 0)
    step = module.balancing(model, 0.0, 0.01, loads)
    model(torch.randint(30, (4, 32)))
    assert step() == 0
    for block in model.trf_blocks:
        assert torch.equal(block.ff.bias, 0.01 * torch.sign(1 / 8 - block.ff.load))
    assert len(loads) == 1 and len(loads[0]) == 2 and len(loads[0][0]) == 8


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_capacity_drops_the_latecomers(factor):
    """16 个一样的词元都去同样的 2 个专家：容量是 factor × 16 × 2 / 8 个，后到的输出是 0。"""
    layer, x = expert_layer(), torch.ones(1, 16, 32)
    expected = layer(x)
    layer.capacity_factor = factor
    kept = int(factor * 4)
    assert torch.allclose(layer(x)[:, :kept], expected[:, :kept]) and not layer(x)[:, kept:].any()
    assert layer.dropped == pytest.approx(1 - kept / 16)


@pytest.mark.parametrize(("window", "sinks"), [(3, 0), (3, 2), (20, 0), (20, 3), (1, 1)])
def test_sinks_equal_torch_with_a_mask(window, sinks):
    torch.manual_seed(0)
    ours, x = load("swa_sinks").MultiHeadAttention(32, 32, 12, 0.0, 4), torch.randn(2, 12, 32)
    ours.window, ours.num_sinks = window, sinks
    visible = torch.tensor([[j <= i and (i - j < window or j < sinks) for j in range(12)] for i in range(12)])
    q, k, v = (linear(x).view(2, 12, 4, 8).transpose(1, 2) for linear in (ours.W_query, ours.W_key, ours.W_value))
    context = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=visible)
    assert torch.allclose(ours(x), ours.out_proj(context.transpose(1, 2).reshape(2, 12, 32)), atol=1e-5)


# ---------- 像读者那样运行 ----------


@pytest.mark.parametrize(("name", "picture"), [("moe_balance", "moe_balance.png"), ("swa_sinks", "swa_sinks.png")])
def test_runs_as_a_reader_would(name, picture, tmp_path):
    env = {key: value for key, value in os.environ.items() if key != "LLM_DATA_DIR"} | {"PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"}
    path = FOLDER.parent / "outputs" / picture
    before = path.stat().st_mtime_ns if path.exists() else 0
    done = subprocess.run([sys.executable, str(FOLDER / f"exp_{name}.py"), "--quick"], cwd=tmp_path, env=env, capture_output=True, encoding="utf-8", timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert "✗" not in done.stdout and done.stdout.count("✓") >= 3 and "训练太短：看流程，不下结论" in done.stdout
    assert not any(word in done.stdout for word in ("更低\n", "更高\n", "分不出\n"))
    assert path.stat().st_mtime_ns > before and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "args", "says"),
    [
        ("moe_balance", ["--rate", 2], "--rate 应在 0 到 1 之间"),
        ("moe_balance", ["--balance", "nan"], "--balance 应在 0 到 100"),
        ("swa_sinks", ["--budget", 4], "--budget 应在 5 到 31 之间，不能是 4"),
        *[(name, ["--steps", 0], "--steps 应在 1 到 100000") for name in ("moe_balance", "swa_sinks")],
        *[(name, ["--seeds", 4], "--seeds 应在 5 到 10 之间，不能是 4") for name in ("moe_balance", "swa_sinks")],
        *[(name, ["--seed", -1], "--seed 应在") for name in ("moe_balance", "swa_sinks")],
    ],
)
def test_bad_arguments(name, args, says, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"exp_{name}.py", *map(str, args)])
    with pytest.raises(SystemExit) as stop:
        load(name).main()
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "") and says in err.splitlines()[-1]
