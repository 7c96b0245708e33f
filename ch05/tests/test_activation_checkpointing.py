"""exp_activation_checkpointing：重算的梯度与不重算的、与 torch.utils.checkpoint 的逐位相同；账本与手算的相同；弄坏了测试就变红。

运行：python -m pytest ch05/tests/test_activation_checkpointing.py
"""

import importlib.util
import os
import subprocess
import sys
from functools import reduce
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "exp_activation_checkpointing.py"


def load(path=SCRIPT, name="exp_activation_checkpointing"):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ns():
    return load()


class Layer(torch.nn.Module):
    """一个小块：线性、tanh、dropout，加残差。"""

    def __init__(self):
        super().__init__()
        self.linear, self.dropout = torch.nn.Linear(6, 6), torch.nn.Dropout(0.4)

    def forward(self, x):
        return x + self.dropout(torch.tanh(self.linear(x)))


def gradients(run, blocks, seed=3):
    """词嵌入 → run → 平方和；返回损失、全部梯度、之后的随机数。"""
    torch.manual_seed(seed)
    table = torch.randn(5, 6).requires_grad_()
    blocks.zero_grad()
    loss = (run(table[torch.tensor([[0, 3, 1], [4, 4, 2]])]) * torch.linspace(-1, 1, 6)).pow(2).sum()
    loss.backward()
    return [loss.detach(), table.grad, *[p.grad for p in blocks.parameters()], torch.get_rng_state()]


def five():
    torch.manual_seed(0)
    return torch.nn.Sequential(*[Layer() for _ in range(5)])


# ---- 每条检查返回成立吗；弄坏代码之后，它必须不成立 ----


def same_as_plain(ns):
    """每几块一段都一样，包括除不尽的；之后的随机数也一样。"""
    blocks = five()
    wanted = gradients(blocks, blocks)
    for every in (0, 1, 2, 3, 5, 9):
        ours = gradients(ns.CheckpointedBlocks(blocks, every), blocks)
        if not all(torch.equal(a, b) for a, b in zip(ours, wanted)):
            return False
    return True


def same_as_torch(ns):
    blocks = five()
    wanted = gradients(lambda x: reduce(lambda x, block: checkpoint(block, x, use_reentrant=False), blocks, x), blocks)
    return all(torch.equal(a, b) for a, b in zip(gradients(ns.CheckpointedBlocks(blocks, 1), blocks), wanted))


def names_stay(ns):
    blocks = five()
    return list(ns.CheckpointedBlocks(blocks, 2).state_dict()) == list(blocks.state_dict())


def ledger_counts(ns):
    """linear、tanh、乘法：存的是输入、tanh 的输出、常数；共用内存的只算一次，参数不算；反向之后都放掉了。"""
    linear, x, factor = torch.nn.Linear(8, 8), torch.randn(4, 8, requires_grad=True), torch.randn(4, 8)
    ledger = ns.Ledger(linear)
    with ledger:
        hidden = torch.tanh(linear(x))  # 存 x（128 字节）、tanh 的输出（128）；权重是参数
        out = (hidden * hidden.view(4, 8) * factor).sum()  # 存 hidden 两次、乘积一次、factor 一次：新的是 256
        stored = ledger.live
        del hidden
        out.backward()
    return (stored, ledger.peak, ledger.live) == (384, 384, 0)


def saves_less(ns):
    """存下的：每块都重算，是每块一份输入；分段的也照公式。"""
    entry = ns.BATCH * ns.BASE["context_length"] * ns.BASE["emb_dim"] * 4 / 2**20
    plain, each, pairs = (ns.saved_bytes(4, every) for every in (0, 1, 2))
    block = (plain["stored"] - ns.saved_bytes(2, 0)["stored"]) / 2
    near = abs(each["peak"] - 4 * entry - block) < 0.1 and abs(pairs["peak"] - 2 * entry - 2 * block) < 0.1
    return near and abs(each["stored"] - pairs["stored"] - 2 * entry) < 0.01 and plain["peak"] > 3.5 * each["peak"]


def evaluation_is_plain(ns):
    """评估时不重算：不存输入，也不改随机数。"""
    blocks = ns.CheckpointedBlocks(five(), 2).eval()
    calls = []
    blocks[0].register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(1, 2, 6, requires_grad=True)
    blocks(x).sum().backward()
    return len(calls) == 1


CHECKS = [same_as_plain, same_as_torch, names_stay, ledger_counts, saves_less, evaluation_is_plain]
BROKEN = [
    (same_as_plain, "        torch.set_rng_state(ctx.rng)", "        pass"),
    (same_as_plain, "        torch.set_rng_state(now)", "        pass"),
    (same_as_plain, "torch.autograd.backward(y, grad)", "torch.autograd.backward(y, torch.ones_like(grad))"),
    (same_as_plain, "return None, x.grad", "return None, grad"),
    (same_as_plain, "x, now = x.detach().requires_grad_(), torch.get_rng_state()", "x, now = x.detach(), torch.get_rng_state()"),
    (same_as_plain, "start : start + self.every]", "start : start + 1]"),
    (same_as_plain, "range(0, len(self), self.every)", "range(0, len(self) - 1, self.every)"),
    (same_as_plain, "if self.every == 0 or not self.training", "if not self.training"),
    (same_as_torch, "        torch.set_rng_state(ctx.rng)", "        pass"),
    (ledger_counts, "ledger.count[self.key] == 1 and self.key not in ledger.mine", "ledger.count[self.key] == 1"),
    (ledger_counts, "ledger.count[self.key] == 1 and self.key not in ledger.mine", "self.key not in ledger.mine"),
    (ledger_counts, "self.ledger.live -= self.ledger.size.pop(self.key, 0)", "self.ledger.live -= 0"),
    (ledger_counts, "self.ledger.count[self.key] -= 1", "self.ledger.count[self.key] -= 2"),
    (saves_less, "Recompute.apply(nn.Sequential(*list(self)[start : start + self.every]), x)", "nn.Sequential(*list(self)[start : start + self.every])(x)"),
    (evaluation_is_plain, "if self.every == 0 or not self.training", "if self.every == 0"),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_right(ns, check):
    assert check(ns)


@pytest.mark.parametrize("check, old, new", BROKEN, ids=lambda value: value.__name__ if callable(value) else "")
def test_broken_is_seen(check, old, new, tmp_path):
    """把那一处改坏，检查就不成立（或出错）：检查不是摆设。"""
    document, start, code = SCRIPT.read_text(encoding="utf-8").partition("\nimport argparse\n")  # 文档的「动手改」里也写着这些
    assert code.count(old) == 1, old
    path = tmp_path / "broken.py"
    path.write_text(document + start + code.replace(old, new), encoding="utf-8")
    try:
        assert not check(load(path, "broken"))
    except (RuntimeError, IndexError, ValueError, TypeError, AttributeError):
        pass


# ---- 零碎 ----


def test_negative_every(ns):
    with pytest.raises(ValueError, match="不能是 -1"):
        ns.CheckpointedBlocks(five(), -1)


def test_the_real_model(ns):
    """真的 GPT，dropout 开着：损失、梯度逐位相同。"""
    plain, window = ns.build(3, 0)
    loss = ns.one_step(plain, window)
    model, again = ns.build(3, 2)
    assert torch.equal(window, again) and ns.one_step(model, window) == loss
    assert torch.equal(ns.gradient(model), ns.gradient(plain))


def test_quartiles(ns):
    assert ns.quartiles([1, 2, 3, 4, 5]) == (2, 3, 4)


def run(*arguments, script=SCRIPT):
    return subprocess.run([sys.executable, str(script), *map(str, arguments)], capture_output=True, encoding="utf-8", env=os.environ | {"PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"})


def test_quick(tmp_path):
    script = tmp_path / "ch05" / "experiments" / SCRIPT.name
    script.parent.mkdir(parents=True)
    script.write_text(SCRIPT.read_text(encoding="utf-8"), encoding="utf-8")
    result = run("--quick", script=script)
    assert result.returncode == 0 and "看流程，不下结论" in result.stdout and result.stdout.count("✓") >= 5 and "✗" not in result.stdout, result.stdout + result.stderr
    assert [path.name for path in (tmp_path / "ch05" / "outputs").glob("*.png")] == ["activation_checkpointing_quick.png"]


@pytest.mark.parametrize("layers", [0, 6, 52])
def test_bad_arguments(ns, layers, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["exp_activation_checkpointing.py", "--layers", str(layers)])
    with pytest.raises(SystemExit) as stopped:
        ns.main()
    assert stopped.value.code == 2 and "--layers 应在 4 到 48 之间" in capsys.readouterr().err.splitlines()[-1]
