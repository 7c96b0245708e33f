"""exp_perplexity_by_position：每个词元正好打一次分、看得见的上文数得对，与另写的算法和 Hugging Face 的写法相同；弄坏了测试就变红。

运行：python -m pytest ch05/tests/test_perplexity_by_position.py
用随机的小模型，不需要 SmolLM2。
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "exp_perplexity_by_position.py"
SIZES = [(100, 16, 16), (100, 16, 8), (100, 16, 5), (100, 16, 1), (15, 16, 4), (16, 16, 16), (17, 16, 16), (33, 16, 8)]


def load(path=SCRIPT, name="exp_perplexity_by_position"):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ns():
    return load()


def model(seed=0):
    """看前面所有词元的小模型：上文不同，损失就不同；没有位置，所以从第几个起都一样。"""

    class Sums(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(seed)
            self.table, self.head = torch.nn.Embedding(11, 6), torch.nn.Linear(6, 11)

        def forward(self, idx):
            return self.head(torch.tanh(self.table(idx).cumsum(dim=1)))

    return Sums()


def article(n):
    return torch.randint(0, 11, (n + 1,), generator=torch.Generator().manual_seed(4))


def one_loss(net, ids, first, place):
    """一个词元的损失：看得见 ids[first] 到 ids[place]，猜 ids[place + 1]。"""
    with torch.no_grad():
        scores = net(ids[None, first : place + 1])[0, -1]
    return (scores.exp().sum().log() - scores[ids[place + 1]]).item()


# ---- 每条检查返回成立吗；弄坏代码之后，它必须不成立 ----


def each_once(ns):
    for n, length, stride in SIZES:
        places, windows = [], ns.plan(n, length, stride)
        for begin, end, skip in windows:
            if not (begin % stride == 0 and 0 < end - begin <= length and end > begin + skip):
                return False
            places += range(begin + skip, end)
        if places != list(range(n)):
            return False
    return True


def context_is_long(ns):
    """除了第一个窗口，打分的词元至少看得见 length − stride + 1 个。"""
    for n, length, stride in SIZES:
        if any(skip + 1 < min(length - stride, begin) + 1 for begin, _, skip in ns.plan(n, length, stride)[1:]):
            return False
    return True


def long_strides_are_refused(ns):
    for stride in (0, 17, -3):
        try:
            ns.plan(100, 16, stride)
            return False
        except ValueError as error:
            if "漏掉词元" not in str(error):
                return False
    return True


def scores_are_right(ns):
    """每种步幅：一个词元一个词元地、从头另算。"""
    net = model()
    for n, length, stride in [(45, 16, 4), (40, 16, 4), (31, 12, 3)]:
        ids = article(n)
        losses = ns.every_window(net, ids, length, stride)
        for each in (stride, length // 2, length):
            ours, cost = ns.evaluate(losses, n, length, each)
            owner, total, scored = {}, 0, 0
            for first in range(0, n, each):  # 哪个窗口给它打分：第一个看得见它的
                last = min(first + length, n)
                owner |= {place: first for place in range(scored, last)}
                total, scored = total + last - first, last
                if last == n:
                    break
            theirs = torch.tensor([one_loss(net, ids, owner[place], place) for place in range(n)])
            if len(ours) != n or cost != total or not torch.allclose(ours, theirs, atol=1e-5):
                return False
    return True


def same_as_hugging_face(ns):
    """Hugging Face 文档里的写法：重叠的目标填 −100，按打分的词元数加权。"""
    net, n, length, stride = model(), 50, 16, 8
    ids = article(n)
    ours, _ = ns.evaluate(ns.every_window(net, ids, length, stride), n, length, stride)
    total, count, before = 0.0, 0, 0
    for begin in range(0, n, stride):
        end = min(begin + length, n)
        inputs, targets = ids[None, begin:end], ids[None, begin + 1 : end + 1].clone()
        targets[:, : -(end - before)] = -100
        with torch.no_grad():
            total += torch.nn.functional.cross_entropy(net(inputs)[0], targets[0], ignore_index=-100, reduction="sum").item()
        count, before = count + end - before, end
        if end == n:
            break
    return count == n and abs(ours.sum().item() - total) < 1e-3


def positions_are_paired(ns):
    """每行是同一个词元，每列是不同的上文长短。"""
    net, n, length, stride = model(), 47, 12, 3
    ids = article(n)
    table = ns.by_position(ns.every_window(net, ids, length, stride), n, length, stride)
    starts = list(range(0, n - length + 1, stride))
    rows = range(length - stride, len(starts) * stride)
    theirs = []
    for place in rows:
        first = [start for start in starts if start <= place < start + length]
        theirs.append([one_loss(net, ids, start, place) for start in sorted(first, reverse=True)])
    return table.shape == (len(rows), 4) and torch.allclose(table, torch.tensor(theirs), atol=1e-5)


CHECKS = [each_once, context_is_long, long_strides_are_refused, scores_are_right, same_as_hugging_face, positions_are_paired]
BROKEN = [
    (each_once, "windows.append((begin, end, scored - begin))", "windows.append((begin, end, 0))"),
    (each_once, "windows.append((begin, end, scored - begin))", "windows.append((begin, end, length - stride))"),
    (each_once, "        if end == n:", "        if False:"),
    (each_once, "end = min(begin + length, n)", "end = begin + length"),
    (each_once, "        scored = end", "        scored = begin + stride"),
    (context_is_long, "windows.append((begin, end, scored - begin))", "windows.append((begin, end, 0))"),
    (long_strides_are_refused, "if not 1 <= stride <= length:", "if not 1 <= stride:"),
    (long_strides_are_refused, "if not 1 <= stride <= length:", "if stride > length:"),
    (scores_are_right, "model(inputs[:, :-1])", "model(inputs[:, 1:])"),
    (scores_are_right, "losses[begin][skip:]", "losses[begin][: len(losses[begin]) - skip]"),
    (scores_are_right, "sum(end - begin for begin, end, _ in windows)", "sum(length for begin, end, _ in windows)"),
    (scores_are_right, "sum(end - begin for begin, end, _ in windows)", "sum(end - begin - skip for begin, end, skip in windows)"),
    (same_as_hugging_face, "losses[begin][skip:]", "losses[begin]"),
    (positions_are_paired, "length - stride - part * stride : (len(starts) - part) * stride]", "length - stride : len(starts) * stride]"),
    (positions_are_paired, "[part * stride : (part + 1) * stride]", "[part : part + stride]"),
    (positions_are_paired, "starts, columns = range(0, n - length + 1, stride), []", "starts, columns = range(0, n - length - stride + 1, stride), []"),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_right(ns, check):
    assert check(ns)


@pytest.mark.parametrize("check, old, new", BROKEN, ids=lambda value: value.__name__ if callable(value) else "")
def test_broken_is_seen(check, old, new, tmp_path):
    """把那一处改坏，检查就不成立（或出错）：检查不是摆设。"""
    document, start, code = SCRIPT.read_text(encoding="utf-8").partition("\nimport argparse\n")  # 文档的「动手改」里也写着这些
    assert code.count(old) == 1, old
    path = tmp_path / "ch05" / "experiments" / "broken.py"
    path.parent.mkdir(parents=True)
    (tmp_path / "setup").symlink_to(SCRIPT.parents[2] / "setup")
    path.write_text(document + start + code.replace(old, new), encoding="utf-8")
    try:
        assert not check(load(path, "broken"))
    except (RuntimeError, IndexError, KeyError):
        pass


# ---- 零碎 ----


def test_more_context_lowers_the_loss(ns):
    """一个看得越多猜得越准的模型：开头的损失高，重叠着量困惑度低。"""

    class Copier(torch.nn.Module):
        """文章每 8 个一循环：看到过上一次，就照抄；没看到过，就瞎猜。"""

        def forward(self, idx):
            logits = torch.zeros(*idx.shape, 50)
            for j in range(7, idx.shape[1]):
                logits[:, j].scatter_(1, idx[:, j - 7, None], 6.0)
            return logits

    ids = (torch.arange(201) % 8) * 5
    losses = ns.every_window(Copier(), ids, 32, 4)
    table = ns.by_position(losses, 200, 32, 4).mean(dim=0)
    scores = [ns.evaluate(losses, 200, 32, stride)[0].mean() for stride in (32, 16, 8)]
    assert table[0] > 3 and table[-1] < 0.5 and scores[0] > scores[1] and abs(scores[1] - scores[2]) < 1e-6


def run(*arguments, script=SCRIPT):
    return subprocess.run([sys.executable, str(script), *map(str, arguments)], capture_output=True, encoding="utf-8", env=os.environ | {"PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """一个没有任何权重的项目。"""
    root = tmp_path_factory.mktemp("bare")
    script = root / "ch05" / "experiments" / SCRIPT.name
    script.parent.mkdir(parents=True)
    shutil.copy(SCRIPT, script)
    (root / "setup").symlink_to(SCRIPT.parents[2] / "setup")
    return script


def test_quick(bare):
    result = run("--quick", script=bare)
    assert result.returncode == 0 and "看流程，不下结论" in result.stdout and result.stdout.count("✓") == 4 and "✗" not in result.stdout, result.stdout + result.stderr
    assert [path.name for path in (bare.parents[1] / "outputs").glob("*.png")] == ["perplexity_by_position_quick.png"]


def test_no_models(bare):
    result = run(script=bare)
    assert result.returncode == 2 and "还没有模型" in result.stderr.splitlines()[-1] and "Traceback" not in result.stderr


def test_bad_text(bare, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("too short", encoding="utf-8")
    for path, says in ((tmp_path / "nothing.txt", "读不了"), (short, "太短")):
        result = run("--quick", "--text", path, script=bare)
        assert result.returncode == 2 and says in result.stderr.splitlines()[-1] and "Traceback" not in result.stderr
