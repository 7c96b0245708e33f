"""exp_lora：参数个数与书上相同；挂上、并进、拆出与手算的相同；典型的错（B 不是 0、忘了缩放、转置、并两次……）一犯测试就变红；内存、斜率与另算的相同；坏参数。

运行：python -m pytest ch06/tests/test_lora.py
用随机的小模型，不需要 SmolLM2。
"""

import importlib.util
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "exp_lora.py"
LLAMA = {"vocab_size": 60, "context_length": 64, "emb_dim": 16, "n_heads": 4, "n_layers": 2, "hidden_dim": 24, "n_kv_groups": 2, "rope_base": 10_000, "rope_freq": None, "norm_eps": 1e-5}


def load(path=SCRIPT, name="exp_lora"):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ns():
    yield load()
    del sys.modules["exp_lora"]


def toy(ns, n=32, seed=0):
    """随机的小 Llama，n 条短信；一类爱用大的编号。"""
    torch.manual_seed(seed)
    labels = torch.tensor([0, 1] * (n // 2))
    messages = [torch.randint(10 + 20 * int(label), 40 + 20 * int(label), (length,)) for label, length in zip(labels, torch.randint(2, 9, (n,)).tolist())]
    return SimpleNamespace(
        kind=ns.LlamaModel, cfg=LLAMA, state=ns.LlamaModel(LLAMA).state_dict(), pad=7, messages=messages, labels=labels, answers=labels.double() * 2 - 1,
        train=range(n - 16), validation=range(n - 16, n - 8), test=range(n - 8, n),
    )  # fmt: skip


def setting_of(ns, **change):
    return ns.BASELINE | {"blocks": 2, "labels": 16, "epochs": 2} | change


def adapted(ns, noise=0.5):
    """挂上了 LoRA 的小模型，B 已经不是 0；输入，挂上之前的输出，挂上还没练的输出。"""
    model = ns.build(toy(ns), setting_of(ns), 1)
    ids = torch.randint(60, (3, 6), generator=torch.Generator().manual_seed(1))
    plain = model(ids)
    ns.attach_lora(model.trf_blocks, 4, 12.0)
    fresh = model(ids)
    for module in model.modules():
        if isinstance(module, ns.LoRALayer):
            module.B.data.normal_(std=noise, generator=torch.Generator().manual_seed(2))
    return model, ids, plain, fresh


# ---- 每条检查返回成立吗；弄坏代码之后，它必须不成立 ----


def counts_right(ns):
    """附录 E 的三个数；一块一块手算的也相同。"""
    r, d = 16, 768
    block = 4 * (d + d) * r + 2 * (d + 4 * d) * r
    return ns.count_book() == [124_441_346, 0, 2_666_528] and 12 * block + (d + 2) * r == 2_666_528


def fresh_right(ns):
    """刚挂上，一位不差；B 动了就变；变多少，与手算的相同。"""
    model, ids, plain, fresh = adapted(ns)
    layer = next(module for module in model.modules() if isinstance(module, ns.LinearWithLoRA))
    x = torch.randn(5, layer.linear.in_features)
    by_hand = torch.stack([row @ layer.linear.weight.T + 12.0 / 4 * sum((row @ layer.lora.A[:, i]) * layer.lora.B[i] for i in range(4)) for row in x])
    return torch.equal(plain, fresh) and not torch.allclose(model(ids), fresh, atol=1e-2) and torch.allclose(layer(x), by_hand, atol=1e-5)


def every_linear_right(ns):
    """七个线性层，方的、不方的，都挂上。"""
    model, *_ = adapted(ns)
    return sum(isinstance(module, ns.LinearWithLoRA) for module in model.modules()) == 2 * 7 and sum(isinstance(module, ns.LoRALayer) for module in model.modules()) == 2 * 7


def trainable_right(ns):
    """原来全都参加训练的，挂上 LoRA 就只剩 A、B；练一练，块里原来的权重一位不变，新的输出层和 B 都变了。"""
    base = toy(ns)
    for train in ("head", "all"):
        model = ns.build(base, setting_of(ns, train=train), 1)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        ns.attach_lora(model.trf_blocks, 4, 12.0)
        ns.train(model, base.messages[:16], base.labels[:16], torch.tensor([len(ids) for ids in base.messages[:16]]), 0, setting_of(ns, lr=1e-2), 1)
        after = {name.replace(".linear.", "."): p for name, p in model.named_parameters()}
        moved = {name for name, p in after.items() if ".lora." not in name and not torch.equal(p, before[name])}
        if not {"out_head.weight", "out_head.bias"} <= moved or any(name.startswith("trf_blocks") for name in moved) or not all((p != 0).any() for name, p in after.items() if name.endswith("lora.B")):
            return False
    return True


def merge_right(ns):
    """并进去，输出差不到 1e-5，模型里不再有 LoRA；拆出来，权重与原来的差舍入误差，可以再并。"""
    model, ids, _, _ = adapted(ns)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained = model(ids)
    adapters = ns.merge(model)
    if any(isinstance(module, ns.LinearWithLoRA) for module in model.modules()) or not torch.allclose(model(ids), trained, atol=1e-5):
        return False
    ns.unmerge(adapters)
    after = dict(model.named_parameters())
    if after.keys() != before.keys() or not all(torch.allclose(p, before[name], atol=1e-6) for name, p in after.items()) or not torch.allclose(model(ids), trained, atol=1e-5):
        return False
    ns.merge(model)
    return torch.allclose(model(ids), trained, atol=1e-5)


def twice_refused(ns):
    """并两次、拆两次，都拒绝，权重一位不变。"""
    model, *_ = adapted(ns)
    adapters = []
    for act in (lambda: adapters.extend(ns.merge(model)), lambda: ns.unmerge(adapters)):
        act()
        before = [p.detach().clone() for p in model.parameters()]
        try:
            act()
        except ValueError:
            if all(torch.equal(a, b) for a, b in zip(before, model.parameters())):
                continue
        return False
    return True


def scaling_right(ns):
    """三种缩放；adapt 真的按 case 里的 scaling 缩放。"""
    values = [[rule(16.0, rank) for rank in (1, 4, 64)] for rule in ns.RULES.values()]
    if not all(a == pytest.approx(b) for a, b in zip(values, [[16, 16, 16], [16, 4, 0.25], [16, 8, 2]])):
        return False
    base, seen = toy(ns), []
    ns.features.cache_clear()
    ns.prepare = lambda *_: base
    real = ns.train
    ns.train = lambda model, *rest: seen.append([(m.scaling, m.A.shape[1]) for m in model.modules() if isinstance(m, ns.LoRALayer)]) or real(model, *rest)
    for rank, scaling in ((4, 16.0), (2, 0.5), (0, 0.0)):
        ns.adapt(("toy",) * 3 + (False,), "", tuple(setting_of(ns, rank=rank, scaling=scaling).items()), 1)
    ns.train = real
    return seen == [[(16.0, 4)] * 7, [(0.5, 2)] * 7, []]


def adapt_right(ns):
    """验证损失、测试准确率，与一条一条、从头算的相同；训练的参数的个数；训练坏了不停下。"""
    base, kept = toy(ns), []
    ns.features.cache_clear()
    ns.prepare = lambda *_: base
    real = ns.train
    ns.train = lambda model, *rest: kept.append(model) or real(model, *rest)
    for rank in (4, 0):
        result = ns.adapt(("toy",) * 3 + (False,), "", tuple(setting_of(ns, rank=rank, scaling=2.0, lr=1e-2).items()), 1)
        with torch.no_grad():
            logits = {part: torch.stack([kept[-1](base.messages[i][None])[0, -1] for i in getattr(base, part)]) for part in ("validation", "test")}
        loss = nn.functional.cross_entropy(logits["validation"], base.labels[list(base.validation)]).item()
        right = (logits["test"].argmax(dim=1) == base.labels[list(base.test)]).float().mean().item()
        sizes = 4 * sum(sum(layer.weight.shape) for layer in ns.LlamaModel(LLAMA).trf_blocks[0].modules() if isinstance(layer, nn.Linear)) if rank else sum(p.numel() for p in ns.LlamaModel(LLAMA).trf_blocks[0].parameters()) + 16
        if result["loss"] != pytest.approx(loss, abs=1e-5) or result["accuracy"] != pytest.approx(right) or result["trained"] != sizes + 34:
            return False
    ns.train = real
    return ns.adapt(("toy",) * 3 + (False,), "", tuple(setting_of(ns, rank=4, scaling=2.0, lr=1e30).items()), 1)["loss"] is None


def footprint_right(ns):
    """权重、梯度、动量，按参数个数算得出；留着的中间结果，与另数的相同，不含权重。"""
    base = toy(ns)
    for lora in (False, True):
        model = ns.build(base, setting_of(ns, train="head" if lora else "all"), 1)
        if lora:
            ns.attach_lora(model.trf_blocks, 4, 4.0)
        items, labels, lengths = base.messages[:8], base.labels[:8], torch.tensor([len(ids) for ids in base.messages[:8]])
        own, places = [p.data_ptr() for p in model.parameters()], {}
        pack = lambda tensor, own=own, places=places: places.update({tensor.untyped_storage().data_ptr(): (tensor, tensor.untyped_storage().nbytes())}) or tensor  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = ns.classification_loss(ns.classify(model, items, 0, "flexible", lengths), labels, -100)
        wanted = sum(nbytes for place, (_, nbytes) in places.items() if place not in own)
        del loss
        places.clear()
        found = ns.footprint(model, items, labels, lengths, setting_of(ns))
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        if [found["weights"], found["gradients"], found["moments"]] != [4 * sum(p.numel() for p in model.parameters()), 4 * trained, 8 * trained] or not 0.95 * wanted <= found["kept"] <= 1.05 * wanted:
            return False
    return True


def rate_right(ns):
    """谷底：真的抛物线上，正好是顶点；在边上就是边上。"""
    for top in (1.7, 3.0, 4.4):
        if ns.best_rate([0.3 + 0.1 * (i - top) ** 2 for i in range(7)]) != pytest.approx(top):
            return False
    return ns.best_rate([1, 2, 3, 4]) == 0 and ns.best_rate([4, 3, 2, 1]) == 3 and ns.best_rate([9.0, 9.0, 1.0, 1.0, 9.0]) == pytest.approx(2.5)


def slope_right(ns):
    """学习率正好随秩的 −1、−½、0 次方变，斜率就是它。"""
    ranks = (1, 4, 16, 64)
    return all(ns.slope(ranks, [math.log(1e-2 * rank**power / 4e-5, 4) for rank in ranks]) == pytest.approx(power, abs=1e-9) for power in (-1.0, -0.5, 0.0))


CHECKS = [counts_right, fresh_right, every_linear_right, trainable_right, merge_right, twice_refused, scaling_right, adapt_right, footprint_right, rate_right, slope_right]
BROKEN = [
    # 常见的错
    (fresh_right, "self.B = nn.Parameter(torch.zeros(rank, out_dim))", "self.B = nn.Parameter(torch.randn(rank, out_dim))"),
    (merge_right, "module.linear.weight.data += module.lora.scaling * (", "module.linear.weight.data += ("),
    (merge_right, "(module.lora.A @ module.lora.B).T.detach()", "(module.lora.B.T @ module.lora.A.T).T.detach()"),
    (merge_right, "(module.lora.A @ module.lora.B).T.detach()", "(module.lora.A @ module.lora.B).T.abs().detach()"),
    (twice_refused, "    if not adapters:", "    if False:"),
    (twice_refused, "if any(getattr(parent, name) is not layer.linear", "if False and any(getattr(parent, name) is not layer.linear"),
    (every_linear_right, "        if isinstance(module, nn.Linear):", "        if isinstance(module, nn.Linear) and module.in_features == module.out_features:"),
    (every_linear_right, "            replace_linear_with_lora(module, rank, alpha)", "            pass"),
    (trainable_right, "    model.requires_grad_(False)\n    replace_linear", "    replace_linear"),
    (trainable_right, 'model.out_head = nn.Linear(base.cfg["emb_dim"], 2)', 'model.out_head = nn.Linear(base.cfg["emb_dim"], 2).requires_grad_(False)'),
    (trainable_right, "    model.requires_grad_(False)\n    replace_linear_with_lora(model, rank, alpha)", "    replace_linear_with_lora(model, rank, alpha)\n    model.requires_grad_(False)"),
    # 其余
    (counts_right, '"qkv_bias": True', '"qkv_bias": False'),
    (fresh_right, "self.scaling = alpha / rank", "self.scaling = alpha"),
    (fresh_right, "self.linear(x) + self.lora(x)", "self.linear(x)"),
    (merge_right, "layer.linear.weight -= layer.lora.scaling", "layer.linear.weight += layer.lora.scaling"),
    (merge_right, "layer.linear.weight -= layer.lora.scaling * (", "layer.linear.weight -= ("),
    (merge_right, "        setattr(parent, name, layer)", "        pass"),
    (scaling_right, 'setting["scaling"] * setting["rank"]', 'setting["scaling"]'),
    (scaling_right, "alpha / rank**0.5", "alpha / rank**2"),
    (adapt_right, "data(base.validation)", "data(base.test)"),
    (adapt_right, "len(part) * classification_loss", "classification_loss"),
    (adapt_right, 'stop = labelled(base.train, base.answers, setting["labels"], seed), setting["blocks"] - 1', 'stop = labelled(base.train, base.answers, setting["labels"], seed), setting["blocks"]'),
    (footprint_right, "not in weights:", "not in kept:"),
    (footprint_right, 'if key != "step"', 'if key == "exp_avg"'),
    (rate_right, "0.5 * (left - right)", "0.5 * (right - left)"),
    (slope_right, "math.log(rank, 4)", "math.log(rank, 2)"),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_right(check):
    assert check(load(name="exp_lora_fresh"))  # 有的检查要换掉里面的函数，各用一份


@pytest.mark.parametrize("check, old, new", BROKEN, ids=lambda value: value.__name__ if callable(value) else "")
def test_broken_is_seen(check, old, new, tmp_path):
    """把那一处改坏，检查就不成立（或出错）：检查不是摆设。"""
    document, start, code = SCRIPT.read_text(encoding="utf-8").partition("\nimport argparse\n")  # 文档的「动手改」里也写着这些
    assert code.count(old) == 1, (code.count(old), old)
    path = tmp_path / "exp_lora.py"
    path.write_text(document + start + code.replace(old, new), encoding="utf-8")
    try:
        assert not check(load(path, "broken"))
    except (RuntimeError, IndexError, ValueError, KeyError, AttributeError, TypeError):
        pass


# ---- 零碎 ----


def test_same_as_the_book(ns):
    """与 llms_from_scratch 的附录 E 比：换掉同样的层；A、B 相同时，输出只差那个缩放（它的版本或有或没有除以秩）。"""
    theirs = pytest.importorskip("llms_from_scratch.appendix_e")
    torch.manual_seed(0)
    book, mine = (nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.ReLU(), nn.Linear(6, 3))) for _ in range(2))
    mine.load_state_dict(book.state_dict())
    theirs.replace_linear_with_lora(book, rank=2, alpha=8)
    ns.replace_linear_with_lora(mine, 2, 8)
    assert book.state_dict().keys() == mine.state_dict().keys()
    for name, p in mine.named_parameters():
        if name.endswith("B"):
            p.data.normal_()
    book.load_state_dict(mine.state_dict())
    x = torch.randn(4, 6)
    change = [model[0](x) - model[0].linear(x) for model in (book, mine)]
    ratio = (change[0] / change[1]).mean().item()
    assert ratio == pytest.approx(1, abs=1e-4) or ratio == pytest.approx(2, abs=1e-4)
    torch.testing.assert_close(change[0], change[1] * ratio, atol=1e-4, rtol=1e-3)


def run(ns, monkeypatch, capsys, folder, *arguments):
    monkeypatch.setattr(ns, "OUTPUTS", folder / "outputs")
    monkeypatch.setenv("LLM_DATA_DIR", str(folder))
    monkeypatch.setattr(sys, "argv", ["exp_lora.py", *arguments])
    ns.prepare.cache_clear(), ns.features.cache_clear()
    code = 0
    try:
        ns.main()
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def test_quick(ns, monkeypatch, capsys, tmp_path):
    torch.manual_seed(0)
    cfg = {"vocab_size": 50257, "context_length": 256, "emb_dim": 12, "n_heads": 2, "n_layers": 4, "drop_rate": 0.1, "qkv_bias": False}
    torch.save({"config": cfg, "model": ns.GPTModel(cfg).state_dict()}, tmp_path / "gpt_mini.pth")
    code, out, error = run(ns, monkeypatch, capsys, tmp_path, "--quick")
    assert code == 0 and "不下结论" in out and "✗" not in out and "分不出" not in out and "124,441,346 → 0 →" in out, out + error
    assert [path.name for path in (tmp_path / "outputs").iterdir() if path.is_file()] == ["lora_quick.png"]
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "outputs" / "exp_lora").iterdir()}
    assert len(stamps) == 11 * 7  # 秩是 1 时三种缩放相同，只算一次
    assert run(ns, monkeypatch, capsys, tmp_path, "--quick")[0] == 0 and all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


@pytest.mark.parametrize("arguments", [["--seeds", "4"], ["--seeds", "11"]], ids=" ".join)
def test_bad_arguments(ns, monkeypatch, capsys, tmp_path, arguments):
    code, _, error = run(ns, monkeypatch, capsys, tmp_path, *arguments)
    assert code == 2 and "--seeds" in error.splitlines()[-1] and "Traceback" not in error and not (tmp_path / "outputs").exists()
