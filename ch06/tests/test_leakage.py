"""exp_leakage：近似的、捆成组的、两种切法都与另写的相同；答案、考卷不会漏；弄坏了测试就变红；--file；坏参数。

运行：python -m pytest ch06/tests/test_leakage.py
用随机的小数据，不需要 SmolLM2。
"""

import importlib.util
import random
import re
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "exp_leakage.py"
CHECK_DATA = Path(__file__).resolve().parents[2] / "setup" / "check_data.py"


def load(path=SCRIPT, name="exp_leakage"):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # inspect.getsource 要找得到它
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ns():
    yield load()
    del sys.modules["exp_leakage"]


def messages(count=90, seed=0):
    """每三条里有一条是改了号码、标点、大小写或一个词的。"""
    rng = random.Random(seed)
    words = "free call now prize meet tonight dinner cash claim reply love bus late home win phone text urgent sorry later".split()
    made = [" ".join(rng.choice(words) for _ in range(rng.randint(3, 14))) for _ in range(count // 3 * 2)]
    for text in made[: count // 3]:
        made.append(rng.choice([text + "!! 0870", text.upper(), text + " xx", text.replace("a", "e", 1), text.replace(" ", ", ", 1), text[: len(text) // 2]]))
    return made + ["12345", ":-)", "", "ok"]


def slow_pairs(texts, threshold):
    """照定义，一对一对用集合算。"""
    forms = [re.sub(r"[\W\d_]+", " ", text.lower()).strip() or text for text in texts]
    pieces = [{form[i : i + 5] for i in range(max(1, len(form) - 4))} for form in forms]
    degree = {(i, j): len(pieces[i] & pieces[j]) / len(pieces[i] | pieces[j]) for j in range(len(texts)) for i in range(j)}
    return {pair: value for pair, value in degree.items() if value >= threshold}


# ---- 每条检查返回成立吗；弄坏代码之后，它必须不成立 ----


def pairs_right(ns):
    for threshold in (0.5, 0.8):
        texts = messages(seed=int(10 * threshold))
        pairs, degrees = ns.near_pairs(texts, threshold)
        theirs = slow_pairs(texts, threshold)
        mine = dict(zip(map(tuple, pairs.tolist()), degrees.tolist()))
        if mine.keys() != theirs.keys() or any(abs(mine[key] - theirs[key]) > 1e-6 for key in mine) or len(mine) < 8:
            return False
    return True


def pairs_cross_blocks(ns):
    """分几批两两比：同一批里的、批与批之间的都比到，每对只记一次。"""
    texts = [f"{chr(97 + i % 26) * 9} {chr(97 + i // 26) * 9} {'long ' * (i % 3)}message" for i in range(300)]
    texts[299], texts[298], texts[20] = texts[3] + "!", texts[290] + " 7", texts[10]
    pairs = list(map(tuple, ns.near_pairs(texts, 0.99)[0].tolist()))
    return sorted(pairs) == sorted(slow_pairs(texts, 0.99)) and {(3, 299), (290, 298), (10, 20)} <= set(pairs)


def groups_right(ns):
    """与一圈一圈地找（广度优先）的相同。"""
    rng = random.Random(1)
    for _ in range(20):
        pairs = [tuple(sorted(rng.sample(range(15), 2))) for _ in range(8)]
        mine = ns.groups_of(15, torch.tensor(pairs)).tolist()
        for start in range(15):
            reached, waiting = {start}, [start]
            while waiting:
                here = waiting.pop()
                for a, b in pairs:
                    for other in [b] * (a == here) + [a] * (b == here):
                        if other not in reached:
                            reached.add(other)
                            waiting.append(other)
            if {i for i in range(15) if mine[i] == mine[start]} != reached:
                return False
        if set(mine) != set(range(max(mine) + 1)):
            return False
    return ns.groups_of(4, torch.zeros(0, 2, dtype=torch.long)).tolist() == [0, 1, 2, 3]


def splits_right(ns):
    """两种切法都不重叠；按组切，一组不分在两边，很大的组也不；条数差不多是七成、两成；种子不同，切得不同。"""
    seen = []
    groups = torch.randint(0, 120, (300,), generator=torch.Generator().manual_seed(0)).unique(return_inverse=True)[1]
    large = torch.cat([torch.zeros(100, dtype=torch.long), torch.arange(1, 201)])
    for seed in range(12):
        for split in (ns.random_rows_split, ns.group_split):
            train, test = split(groups, torch.Generator().manual_seed(seed))
            both = torch.cat([train, test])
            if len(both.unique()) != len(both) or abs(len(train) - 210) > 8 or abs(len(test) - 60) > 8:
                return False
            seen.append(test.sort()[0].tolist())
        for sizes in (groups, large):
            train, test = ns.group_split(sizes, torch.Generator().manual_seed(seed))
            if torch.isin(sizes[test], sizes[train]).any():
                return False
    return all(seen.count(each) == 1 for each in seen)


def twins_right(ns):
    rng = random.Random(2)
    for _ in range(20):
        pairs = [tuple(sorted(rng.sample(range(20), 2))) for _ in range(9)]
        order = rng.sample(range(20), 20)
        rows, asked = order[:10], order[10:16]
        mine = ns.twins_of(torch.tensor(asked), torch.tensor(rows), torch.tensor(pairs)).tolist()
        if mine != [any((min(i, j), max(i, j)) in pairs for j in rows) for i in asked]:
            return False
        chosen = order[:12]
        inside, kept = ns.within(torch.tensor(chosen), 20, torch.tensor(pairs))
        if [tuple(chosen[i] for i in pair) for pair in inside.tolist()] != [pair for pair in pairs if set(pair) <= set(chosen)] or kept.sum() != len(inside):
            return False
    return True


def classifiers_right(ns):
    """最近邻与一条一条找的相同；岭回归与解方程的相同；考卷的答案改了，学的不变。"""
    generator = torch.Generator().manual_seed(3)
    answers = torch.tensor([1.0, -1.0] * 20, dtype=torch.float64)
    x = torch.nn.functional.normalize(torch.randn(40, 6, generator=generator) + 0.5 * answers[:, None].float(), dim=1)
    kernel, rows, asked = ns.similarity(x), torch.arange(25), torch.arange(25, 40)
    slowly = [(answers[max(range(25), key=lambda j: (x[i] @ x[j]).item())] == answers[i]).item() for i in range(25, 40)]
    if ns.nearest(kernel, rows, asked, answers).tolist() != slowly:
        return False
    _, penalty, _ = ns.learn(kernel[:25, :25], answers[:25])
    scores = kernel[25:, :25] @ torch.linalg.solve(kernel[:25, :25] + penalty * torch.eye(25, dtype=torch.float64), answers[:25])
    flipped = torch.cat([answers[:25], -answers[25:]])
    mine = ns.ridge(kernel, rows, asked, answers)
    return mine.tolist() == ((scores > 0) == (answers[25:] > 0)).tolist() and (ns.ridge(kernel, rows, asked, flipped) == ~mine).all().item()


def toy_file(folder, seed=0):
    """两类的点；后 60 条是前 60 条的近似。"""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(300, generator=generator) < 0.4).long()
    x = torch.randn(300, 5, generator=generator) + 0.9 * labels[:, None]
    labels[240:], x[240:] = labels[:60], x[:60] + 0.01 * torch.randn(60, 5, generator=generator)
    torch.save({"features": x.half(), "labels": labels}, folder / "data.pt")
    torch.save(torch.stack([torch.arange(60), torch.arange(240, 300)], dim=1), folder / "pairs.pt")
    return str(folder / "data.pt"), str(folder / "pairs.pt")


def seeds_right(ns):
    """天然的：有近似的，最近邻几乎全对，删掉近似就不再是；按组切一条不漏。注入的：最近邻从不漏的成绩，一路涨到全对。"""
    data, pairs = toy_file(ns.tmp)
    found = [ns.run_seed(data, pairs, seed) for seed in range(4)]
    mean = lambda part, key: sum(each[part][key] for each in found) / 4  # noqa: E731
    natural = mean("天然", "最近邻，随便切，有近似的") > 0.97 and mean("天然", "最近邻，删掉考题的近似，有近似的") < 0.9 and mean("天然", "最近邻，随便删掉同样多，有近似的") > 0.97
    natural = natural and all(each["天然"]["按组切，近似的占"] == 0 and each["天然"]["近似的占"] > 0.1 for each in found)
    rows = [[mean("注入", f"最近邻，{name}，{share:.0%}") for share in ns.LEAKED] for name in ("真答案", "打乱的答案")]
    grows = all(abs(row[-1] - 1) < 1e-9 and all(abs(value - (row[0] + share * (1 - row[0]))) < 0.06 for value, share in zip(row, ns.LEAKED)) for row in rows)
    return natural and grows and abs(rows[1][0] - 0.5) < 0.12 and len({each["短信"] for each in found}) == 1


CHECKS = [pairs_right, pairs_cross_blocks, groups_right, splits_right, twins_right, classifiers_right, seeds_right]
BROKEN = [
    (pairs_right, "sizes[part, None] + sizes - both", "sizes[part, None] + sizes"),
    (pairs_right, "sizes[part, None] + sizes - both", "torch.minimum(sizes[part, None], sizes)"),
    (pairs_right, "range(max(1, len(text) - 4))", "range(max(1, len(text) - 5))"),
    (pairs_right, "(degree >= threshold)", "(degree > 2 * threshold)"),
    (pairs_right, '" ", text.lower()).strip()', '" ", text).strip()'),
    (pairs_right, r'r"[\W\d_]+"', r'r"[\W_]+"'),
    (pairs_cross_blocks, "part[:, None] < torch.arange(len(texts))", "torch.arange(len(part))[:, None] < torch.arange(len(texts)) - 256"),
    (pairs_cross_blocks, "torch.stack([part[found[:, 0]], found[:, 1]], dim=1)", "torch.stack([found[:, 0], found[:, 1]], dim=1) * (start == 0)"),
    (groups_right, "leader[top(j)] = top(i)", "leader[j] = i"),
    (groups_right, "leader[top(j)] = top(i)", "leader[j] = top(i)"),
    (splits_right, "order[int(len(order) * 0.8) :]", "order[int(len(order) * 0.6) :]"),
    (splits_right, "torch.randperm(groups.max() + 1, generator=generator)[groups]", "torch.randperm(len(groups), generator=generator)"),
    (splits_right, "torch.randperm(groups.max() + 1, generator=generator)[groups]", "groups"),
    (splits_right, "torch.searchsorted(order, order[int(len(rows) * share)]).item()", "int(len(rows) * share)"),
    (twins_right, "torch.cat([pairs, pairs.flip(1)])", "pairs"),
    (twins_right, "torch.isin(both[:, 1], rows), 0]", "torch.isin(both[:, 0], rows), 0]"),
    (twins_right, "(place[pairs] >= 0).all(dim=1)", "(place[pairs] >= 0).any(dim=1)"),
    (classifiers_right, "kernel[asked][:, rows].argmax(dim=1)", "kernel[asked][:, rows].argmin(dim=1)"),
    (classifiers_right, "learn(kernel[rows][:, rows], answers[rows])", "learn(kernel[asked][:, asked], answers[asked])"),
    (seeds_right, '"删掉考题的近似": train[~parent]', '"删掉考题的近似": train'),
    (seeds_right, "rows[leaving[:count]] = test[leaking[:count]]", "rows[leaving[:count]] = train[leaking[:count]]"),
    (seeds_right, "truth[torch.randperm(len(truth), generator=generator)]", "truth"),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_right(ns, check, tmp_path):
    ns.tmp = tmp_path
    assert check(ns)


@pytest.mark.parametrize("check, old, new", BROKEN, ids=lambda value: value.__name__ if callable(value) else "")
def test_broken_is_seen(check, old, new, tmp_path):
    """把那一处改坏，检查就不成立（或出错）：检查不是摆设。"""
    document, start, code = SCRIPT.read_text(encoding="utf-8").partition("\nimport argparse\n")  # 文档的「动手改」里也写着这些
    assert code.count(old) == 1, old
    path = tmp_path / "exp_leakage.py"
    path.write_text(document + start + code.replace(old, new), encoding="utf-8")
    broken = load(path, "broken_leakage")
    broken.tmp = tmp_path
    try:
        assert not check(broken)
    except (RuntimeError, IndexError, ValueError):
        pass
    finally:
        del sys.modules["broken_leakage"]


# ---- 与查数据的工具数得一样；整个脚本 ----


def test_same_as_check_data(ns):
    """setup/check_data.py 用另一种办法找（先筛最罕见的碎片），找到的相同。"""
    sys.path.insert(0, str(CHECK_DATA.parent))
    theirs = load(CHECK_DATA, "check_data")
    try:
        forms = sorted({ns.normalize(text) for text in messages(300, 5)})
        assert sorted(map(tuple, ns.near_pairs(forms, 0.8)[0].tolist())) == sorted(tuple(sorted(pair)) for pair in theirs.near_pairs(forms))
    finally:
        sys.path.remove(str(CHECK_DATA.parent))
        del sys.modules["check_data"]


def run(ns, monkeypatch, capsys, tmp_path, *arguments):
    monkeypatch.setattr(ns, "OUTPUTS", tmp_path / "outputs")
    monkeypatch.setattr(sys, "argv", ["exp_leakage.py", *arguments])
    code = 0
    try:
        ns.main()
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def test_quick(ns, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("LLM_DATA_DIR", "")
    code, out, _ = run(ns, monkeypatch, capsys, tmp_path, "--quick")
    assert code == 0 and "不下结论" in out and "✗" not in out and "分不出" not in out and "±" not in out
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir()) == ["features", "leakage", "leakage_quick.png"]


def test_file(ns, monkeypatch, capsys, tmp_path):
    """数得对：50 条正常、50 条垃圾（其中 20 条一字不差地来两遍，另有 10 条只换了号码）。"""
    spam = [f"{a} {b} prize waiting claim it today" for a in ("lovely", "golden", "second", "urgent", "secret", "famous") for b in ("winter", "summer", "monday", "casino")]
    rows = [("ham", f"see you at {word} then {word[::-1]} ok") for word in (chr(97 + i % 26) * 3 + chr(97 + i // 26) * 4 for i in range(50))]
    rows += [("spam", text) for text in spam[:20] * 2] + [("spam", text.replace("waiting", f"waiting {i}")) for i, text in enumerate(spam[:10])]
    path = tmp_path / "mine.tsv"
    path.write_text("".join(f"{label}\t{text}\n" for label, text in rows), encoding="utf-8")
    code, out, _ = run(ns, monkeypatch, capsys, tmp_path, "--file", str(path))
    assert code == 0 and "100 条：一字不差的多出 20 条，不计大小写、数字、标点的多出 30 条" in out and "标签矛盾的 0 对" in out and not (tmp_path / "outputs").exists()
    crossing = re.search(r"测试集 20 条，(\d+) 条在训练集里有一字不差的，另有 (\d+) 条有近似的", out)
    assert int(crossing[1]) + int(crossing[2]) > 3 and "捆成一组再切：0.0%" in out


@pytest.mark.parametrize("arguments, word", [(["--seeds", "3"], "--seeds"), (["--file", "没有这个.tsv"], "没有这个.tsv"), (["--model", "smollm2"], "requirements-model.txt")], ids=" ".join)
def test_bad_input_is_one_sentence(ns, monkeypatch, capsys, tmp_path, arguments, word):
    monkeypatch.setattr(ns, "SMOLLM2", tmp_path / "没有.pth")
    monkeypatch.setattr(ns, "near_pairs", lambda *_: (torch.zeros(0, 2, dtype=torch.long), torch.zeros(0)))
    code, _, error = run(ns, monkeypatch, capsys, tmp_path, *arguments)
    assert code == 2 and word in error.splitlines()[-1] and "Traceback" not in error and not (tmp_path / "outputs").exists()


@pytest.mark.skipif(not (Path(__file__).resolve().parents[2] / "setup" / "downloads" / "SMSSpamCollection.tsv").is_file() and "LLM_DATA_DIR" not in __import__("os").environ, reason="没有原书的短信：python setup/download.py sms-spam")
def test_the_books_split(ns, capsys):
    """原书的 300 条测试短信：37 条一字不差，另有 30 条近似。"""
    path = ns.find_data("SMSSpamCollection.tsv", "messages.tsv")
    if path.stat().st_size != 477_907:
        pytest.skip("不是原书的那份短信")
    ns.describe(ns.load_messages(path), "原书的短信")
    assert "测试集 300 条，37 条在训练集里有一字不差的，另有 30 条有近似的" in capsys.readouterr().out
