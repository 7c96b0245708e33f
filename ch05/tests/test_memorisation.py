"""exp_memorisation：背出几个、照抄几成、最长的一段，与另写的朴素算法相同；弄坏了测试就变红；--quick、坏参数。

运行：python -m pytest ch05/tests/test_memorisation.py
"""

import importlib.util
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "exp_memorisation.py"


def load(path=SCRIPT, name="exp_memorisation"):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ns():
    return load()


class Parrot(torch.nn.Module):
    """每个词元只出现一次的文章，它记得下一个是谁；走到 slips 里的词元，就跳回开头。"""

    def __init__(self, ids, slips=()):
        super().__init__()
        self.next = {now: after for now, after in zip(ids[:-1], ids[1:])} | {ids[-1]: ids[0]} | {slip: ids[0] for slip in slips}
        self.size = len(ids)

    def forward(self, idx):
        logits = torch.zeros(*idx.shape, self.size)
        for row, column in [(row, column) for row in range(idx.shape[0]) for column in range(idx.shape[1])]:
            logits[row, column, self.next[idx[row, column].item()]] = 9.0
        return logits


def article(ns):
    """150 个各不相同的词元，和它所有的片段。"""
    ids = torch.randperm(150, generator=torch.Generator().manual_seed(2)).tolist()
    return ids, {length: {tuple(ids[i : i + length]) for i in range(150 - length + 1)} for length in range(1, ns.WRITE + 1)}


# ---- 每条检查返回成立吗；弄坏代码之后，它必须不成立 ----


def counts_the_start(ns):
    cases = [([1, 2, 3, 4], [1, 2, 9, 4], 2), ([1, 2], [1, 2, 3], 2), ([5, 2], [1, 2], 0), ([1, 2, 3], [1, 2, 3], 3), ([2, 3, 4], [1, 2, 3], 0)]
    return all(ns.recite(written, original) == right for written, original, right in cases)


def copies_and_runs(ns):
    """与"在文字里找"的朴素算法比：片段写成字符串，用 in。"""
    rng = random.Random(0)
    for _ in range(30):
        corpus = [rng.choice("ab") for _ in range(60)]
        written = [rng.choice("ab") for _ in range(rng.randint(9, 20))]
        known = {length: ns.grams(corpus, length) for length in range(1, ns.WRITE + 1)}
        text, line = "".join(corpus), "".join(written)
        pieces = [line[i : i + 8] for i in range(len(line) - 7)]
        runs = [stop - start for start in range(len(line)) for stop in range(start, len(line) + 1) if line[start:stop] in text]
        if abs(ns.copied(written, known) - sum(piece in text for piece in pieces) / len(pieces)) > 1e-9 or ns.longest_run(written, known) != max(runs):
            return False
    known = {length: ns.grams(list("abcdefghij"), length) for length in range(1, ns.WRITE + 1)}
    return ns.longest_run(list("abcdefghij"), known) == 10 and len(known[8]) == 3


def parrot_recites(ns):
    ids, known = article(ns)
    for hint in (1, 4, 16):
        if ns.probe(Parrot(ids), torch.tensor(ids), known, hint) != {"recited": 32, "whole": 1.0, "copied": 1.0, "longest": 32}:
            return False
    return True


def slips_are_seen(ns):
    """走到几个词元就出错：一处一处地数，从头对几个。"""
    ids, known = article(ns)
    slips = [ids[30], ids[71], ids[110]]
    for hint, moved in ((1, 0), (3, 0), (16, 0), (16, 20)):
        right = []
        for i in range(ns.PLACES):
            start = moved + hint + i * (150 - 48 - moved) // 11  # 要写的从这里起
            bad = [place for place in (30, 71, 110) if start - 1 <= place < start + 31]
            right.append(bad[0] - start + 1 if bad else 32)
        found = ns.probe(Parrot(ids, slips), torch.tensor(ids), known, hint, moved)
        if abs(found["recited"] - sum(right) / 12) > 1e-9 or abs(found["whole"] - right.count(32) / 12) > 1e-9 or found["copied"] >= 1:
            return False
    return True


def starts_at_windows(ns):
    """文字够长：提示词都从训练时窗口的开头取（或一样地往后挪），12 处各不相同，后面都放得下。"""
    n, t = 1000, ns.CONFIG["context_length"]
    known = {length: set() for length in range(1, ns.WRITE + 1)}
    seen = []

    class Watcher(torch.nn.Module):
        def forward(self, idx):
            seen.append(idx[:, 0].tolist())
            return torch.zeros(*idx.shape, n)

    for moved in (0, 20):
        seen.clear()
        ns.probe(Watcher(), torch.arange(n), known, 4, moved)
        places = seen[0]
        if len(set(places)) != 12 or any((place - moved) % t for place in places) or max(places) > n - 48 or max(places) < n - 48 - 2 * t:
            return False
    return True


def split_is_clean(ns):
    """课文和没见过的不重叠，合起来就是全文；编号从 0 起，一个不空。"""
    train, val, size = ns.load_text(SCRIPT.parents[2] / "setup" / "data" / "story-en.txt")
    whole = torch.cat([train, val])
    return len(val) == -(-len(whole) // 10) and len(whole) == 5299 and sorted(set(whole.tolist())) == list(range(size))


CHECKS = [counts_the_start, copies_and_runs, parrot_recites, slips_are_seen, starts_at_windows, split_is_clean]
BROKEN = [
    (counts_the_start, "enumerate(zip(written, original))", "enumerate(zip(written[1:], original))"),
    (counts_the_start, "if ours != theirs), min(len(written), len(original)))", "if ours != theirs), 0)"),
    (counts_the_start, "if ours != theirs)", "if ours == theirs)"),
    (copies_and_runs, "for i in range(len(ids) - length + 1)}", "for i in range(len(ids) - length)}"),
    (copies_and_runs, "for i in range(len(written) - GRAM + 1)]", "for i in range(0, len(written) - GRAM + 1, GRAM)]"),
    (copies_and_runs, "for piece in pieces) / len(pieces)", "for piece in pieces) / len(written)"),
    (copies_and_runs, "known[length + 1]:", "known[max(length, 1)]:"),
    (copies_and_runs, "while length < len(written) and", "while length < len(written) - 1 and"),
    (parrot_recites, ")[:, hint:].tolist()", ").tolist()"),
    (parrot_recites, "ids[start + hint : start + hint + WRITE]", "ids[start : start + WRITE]"),
    (parrot_recites, "sum(each == WRITE for each in right)", "sum(each == PROMPT for each in right)"),
    (slips_are_seen, "starts = [moved + i", "starts = [i"),
    (slips_are_seen, "room = len(ids) - moved - PROMPT - WRITE", "room = len(ids) - moved - 2 * WRITE"),
    (starts_at_windows, "step = window if room >= window * (PLACES - 1) else 1", "step = 1"),
    (starts_at_windows, "starts = [moved + i", "starts = [i"),
    (slips_are_seen, '"recited": statistics.mean(right)', '"recited": max(right)'),
    (split_is_clean, "return ids[: len(ids) * 9 // 10], ids[len(ids) * 9 // 10 :]", "return ids[: len(ids) * 9 // 10], ids[len(ids) // 2 :]"),
    (split_is_clean, "enumerate(sorted(set(found)))", "enumerate(found)"),
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
    except (RuntimeError, IndexError, KeyError, SyntaxError):
        pass


# ---- 零碎 ----


def test_it_learns_the_text(ns, monkeypatch):
    """小模型、一段很短的课文，练得久：损失低，背得出；没见过的背不出。"""
    monkeypatch.setattr(ns, "CONFIG", ns.CONFIG | {"emb_dim": 48, "n_heads": 2, "n_layers": 1, "drop_rate": 0.0, "context_length": 64})
    monkeypatch.setattr(ns, "load_text", lambda path: (torch.arange(400) * 7 % 97, torch.arange(100) * 5 % 97, 97))
    result = ns.train_once("x", (0, 80), 1)
    start, end = result["looks"]
    assert end["train"] < 0.3 < start["train"] and end["课文"]["recited"] > 24 > 8 > end["没见过的"]["recited"]
    assert start["课文"]["recited"] < 2 and result["hints"][16][0]["whole"] > result["looks"][0]["课文"]["whole"]


def run(*arguments, script=SCRIPT):
    return subprocess.run([sys.executable, str(script), *map(str, arguments)], capture_output=True, encoding="utf-8", env=os.environ | {"PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"})


def test_quick(tmp_path):
    script = tmp_path / "ch05" / "experiments" / SCRIPT.name
    script.parent.mkdir(parents=True)
    script.write_text(SCRIPT.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "setup").symlink_to(SCRIPT.parents[2] / "setup")
    result = run("--quick", script=script)
    assert result.returncode == 0 and "看流程，不下结论" in result.stdout and result.stdout.count("✓") == 5 and "✗" not in result.stdout, result.stdout + result.stderr
    assert [path.name for path in (tmp_path / "ch05" / "outputs").glob("*.png")] == ["memorisation_quick.png"]


@pytest.mark.parametrize("arguments, says", [(["--epochs", "0"], "--epochs 应在"), (["--seed", "-1"], "--seed 应在"), (["--text", "没有这个文件.txt"], "读不了")], ids=str)
def test_bad_arguments(ns, arguments, says, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["exp_memorisation.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        ns.main()
    assert stopped.value.code == 2 and says in capsys.readouterr().err.splitlines()[-1]


def test_short_text(ns, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("too short " * 50, encoding="utf-8")
    with pytest.raises(ValueError, match="至少要 2000 个"):
        ns.load_text(short)
