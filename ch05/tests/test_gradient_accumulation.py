"""exp_gradient_accumulation：攒起来的梯度与一个词元一个词元地算相同；弄坏了测试就变红；--quick、坏参数。

运行：python -m pytest ch05/tests/test_gradient_accumulation.py
"""

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "exp_gradient_accumulation.py"


def load(path=SCRIPT, name="exp_gradient_accumulation"):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ns():
    return load()


def model(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Embedding(9, 6), torch.nn.Tanh(), torch.nn.Linear(6, 9)).double()


def batch():
    """7 句，除不尽的小批；有长有短，有一句全是提示词；0 也是要学的词元。"""
    torch.manual_seed(5)
    window = torch.randint(0, 9, (7, 11))
    inputs, targets = window[:, :-1], window[:, 1:].clone()
    for row, (start, end) in enumerate([(0, 10), (3, 5), (9, 10), (10, 10), (2, 9), (0, 1), (4, 10)]):
        targets[row, :start], targets[row, end:] = -100, -100
    targets[0, 0] = 0
    return inputs, targets


def by_hand(net, inputs, targets, size=None):
    """一个词元一个词元地算：size 是 None 时整批的平均，否则是各小批的平均再平均。"""
    losses, owner = [], []
    for row in range(len(inputs)):
        for column in range(inputs.shape[1]):
            if targets[row, column] != -100:
                scores = net(inputs[row : row + 1])[0, column]
                losses.append(scores.exp().sum().log() - scores[targets[row, column]])
                owner.append(row // size if size else 0)
    parts = math.ceil(len(inputs) / size) if size else 1
    loss = sum(sum(one for one, place in zip(losses, owner) if place == part) / owner.count(part) for part in set(owner)) / parts
    return loss.item(), torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, list(net.parameters()))])


# ---- 每条检查返回成立吗；弄坏代码之后，它必须不成立 ----


def accumulates(ns):
    inputs, targets = batch()
    wanted_loss, wanted = by_hand(model(), inputs, targets)
    for size in (1, 2, 3, 7, 10):
        net = model()
        net[2].bias.grad = torch.full((9,), 5.0, dtype=torch.float64)  # 上一批留下的
        loss = ns.accumulate(net, inputs, targets, size, ns.WEIGHTS["按词元"])
        if not (math.isclose(loss, wanted_loss, rel_tol=1e-9) and torch.allclose(ns.gradient(net), wanted, atol=1e-12)):
            return False
    return True


def mistake_is_the_mistake(ns):
    """平均的平均，正是把书上的 calc_loss_batch 用在每个小批上、再除以个数。"""
    inputs, targets = (part[[0, 1, 2, 4, 5, 6]] for part in batch())
    for size in (1, 2, 3):
        wanted_loss, wanted = by_hand(model(), inputs, targets, size)
        net = model()
        loss = ns.accumulate(net, inputs, targets, size, ns.WEIGHTS["平均的平均"])
        if not (math.isclose(loss, wanted_loss, rel_tol=1e-9) and torch.allclose(ns.gradient(net), wanted, atol=1e-12)):
            return False
    return True


def nothing_to_learn_is_refused(ns):
    inputs, targets = batch()
    try:
        ns.accumulate(model(), inputs, torch.full_like(targets, -100), 2, ns.WEIGHTS["按词元"])
        return False
    except ValueError as error:
        return "全是 −100" in str(error)


def collates(ns):
    rows = [([10, 11, 12, 13, 14, 15], 2), ([20, 21, 22, 23], 1)]
    inputs, targets = ns.collate(rows)
    right = inputs.tolist() == [[10, 11, 12, 13, 14], [20, 21, 22, 23, 0]] and targets.tolist() == [[-100, 12, 13, 14, 15], [21, 22, 23, -100, -100]]
    inputs, targets = ns.collate(rows, ragged=False)
    return right and inputs.tolist() == [[10, 11, 12], [20, 21, 22]] and targets.tolist() == [[11, 12, 13], [21, 22, 23]]


def shares_are_weights(ns):
    """分量就是每个词元的损失前面乘的数：拿它加权，得到平均的平均的损失。"""
    inputs, targets = (part[[0, 1, 2, 4, 5, 6]] for part in batch())
    counts = (targets != -100).sum(dim=1)
    each = torch.nn.functional.cross_entropy(model()(inputs).transpose(1, 2), targets, ignore_index=-100, reduction="none").sum(dim=1)
    for size in (1, 2, 3):
        pairs = ns.shares(targets, size, ns.WEIGHTS["平均的平均"])
        if [length for length, _ in pairs] != counts.tolist():
            return False
        weighted = sum(share * loss for (_, share), loss in zip(pairs, each)) / counts.sum()
        if not math.isclose(weighted.item(), by_hand(model(), inputs, targets, size)[0], rel_tol=1e-9):
            return False
    return all(math.isclose(share, 1.0) for _, share in ns.shares(targets, 2, ns.WEIGHTS["按词元"]))


def gap_is_relative(ns):
    ours, wanted = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 0.0])
    return math.isclose(ns.gap(ours, wanted), 4 / 3, rel_tol=1e-6)


CHECKS = [accumulates, mistake_is_the_mistake, nothing_to_learn_is_refused, collates, shares_are_weights, gap_is_relative]
BROKEN = [
    (accumulates, "    model.zero_grad()  #", "    pass  #"),
    (accumulates, "own, total, parts: 1 / total", "own, total, parts: 1 / parts"),
    (accumulates, "own, total, parts: 1 / total", "own, total, parts: 1 / own / parts"),
    (accumulates, 'reduction="sum"', 'reduction="mean"'),
    (accumulates, "ignore_index=-100", "ignore_index=0"),
    (accumulates, "total = (targets != -100).sum().item()", "total = targets.numel()"),
    (accumulates, "zip(inputs.split(size), targets.split(size))", "zip(inputs.split(size), targets.flip(0).split(size))"),
    (accumulates, "        if own == 0:", "        if own < 2:"),
    (accumulates, "            continue\n        scaled", "            break\n        scaled"),
    (accumulates, "loss += scaled.item()", "loss = scaled.item()"),
    (accumulates, "scaled.backward()", "(loss or scaled).backward() if not loss else None"),
    (mistake_is_the_mistake, "1 / own / parts", "1 / own"),
    (mistake_is_the_mistake, "own = (some_targets != -100).sum().item()", "own = some_targets.numel()"),
    (nothing_to_learn_is_refused, "    if total == 0:", "    if False:"),
    (collates, ": prompt - 1]", ": prompt]"),
    (collates, "len(ids) - 1 :]", "len(ids) :]"),
    (collates, "window[:, 1:].clone()", "window[:, :-1].clone()"),
    (collates, "(max if ragged else min)", "(max if ragged else max)"),
    (shares_are_weights, "weight(part.sum().item(), total, len(parts)) * total", "weight(part.sum().item(), total, len(parts)) * len(part)"),
    (gap_is_relative, "(ours - wanted).norm() / wanted.norm()", "(ours - wanted).norm() / ours.norm()"),
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
    except (RuntimeError, IndexError, ZeroDivisionError):
        pass


# ---- 零碎 ----


def test_the_real_model(ns):
    """真的 GPT、真的句子：按词元的差不到百万分之一，平均的平均差得多。"""
    rows = ns.sentences(SCRIPT.parents[2] / "setup" / "data" / "story-en.txt")
    inputs, targets = ns.collate(rows[:6])
    net = ns.build(1)
    torch.nn.functional.cross_entropy(net(inputs).transpose(1, 2), targets, ignore_index=-100).backward()  # 现成的：不算 −100，求平均
    wanted = ns.gradient(net)
    ns.accumulate(net, inputs, targets, 1, ns.WEIGHTS["按词元"])
    assert ns.gap(ns.gradient(net), wanted) < 1e-6
    ns.accumulate(net, inputs, targets, 1, ns.WEIGHTS["平均的平均"])
    assert ns.gap(ns.gradient(net), wanted) > 0.05


def test_a_fresh_process_that_stops(ns):
    with pytest.raises(OSError, match="中途停了（退出码 2）"):
        ns.fresh("--measure", 3)


def test_less_memory(ns):
    """拆成 8 份，一步升的内存比整批少（Linux、Mac）。"""
    rises = [ns.fresh("--measure", size, "--quick")["rise"] for size in (8, 1)]
    assert rises[0] is None or rises[1] < rises[0]


def run(*arguments, script=SCRIPT):
    return subprocess.run([sys.executable, str(script), *map(str, arguments)], capture_output=True, encoding="utf-8", env=os.environ | {"PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"})


def test_quick(tmp_path):
    script = tmp_path / "ch05" / "experiments" / SCRIPT.name
    script.parent.mkdir(parents=True)
    script.write_text(SCRIPT.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "setup").symlink_to(SCRIPT.parents[2] / "setup")
    result = run("--quick", script=script)
    assert result.returncode == 0 and "看流程，不下结论" in result.stdout and result.stdout.count("✓") == 6 and "✗" not in result.stdout, result.stdout + result.stderr
    assert [path.name for path in (tmp_path / "ch05" / "outputs").glob("*.png")] == ["gradient_accumulation_quick.png"]


@pytest.mark.parametrize("arguments, says", [(["--text", "没有这个文件.txt"], "读不了"), (["--seed", "-1"], "--seed 应在")], ids=str)
def test_bad_arguments(ns, arguments, says, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["exp_gradient_accumulation.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        ns.main()
    assert stopped.value.code == 2 and says in capsys.readouterr().err.splitlines()[-1]


def test_short_text(ns, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("One sentence only, but long.", encoding="utf-8")
    with pytest.raises(ValueError, match="至少要 40 句"):
        ns.sentences(short)
