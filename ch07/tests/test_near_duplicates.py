"""exp_near_duplicates：TF-IDF、杰卡德、MinHash、LSH 与直接的算法、公式相同；弄坏了测试就变红；自己的文件能查、能删；出错时一句中文。

运行：python -m pytest ch07/tests/test_near_duplicates.py
"""

import importlib.util
import json
import math
import random
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

pytest.importorskip("datasketch", reason="没有装 datasketch：pip install -r setup/requirements-data.txt")

SCRIPT = Path(__file__).resolve().parent.parent / "experiments" / "exp_near_duplicates.py"
TEXTS = ["the cat sat on the mat", "the cat sat on the hat", "Colourless green ideas sleep", "ab", "the cat sat on the mat", "一 只 猫 坐 在 垫 子 上"]


def load(path=SCRIPT):
    spec = importlib.util.spec_from_file_location("exp_near_duplicates", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def module():
    return load()


# ---- 每条检查返回成立吗；弄坏代码之后，它必须不成立 ----


def normalize_right(ns):
    return [ns.normalize(text) for text in ("Don't STOP,  now!", "价格：12.50 元", "")] == ["don t stop now", "价格 12 50 元", ""]


def shingles_right(ns):
    return [ns.shingles(text) for text in ("abcab", "ab", "", "aaaa")] == [{"abc", "bca", "cab"}, {"ab"}, {""}, {"aaa"}]


def tfidf_right(ns):
    """一条一条、一个片段一个片段地手算。"""
    grams = [Counter(text[i : i + 3] for i in range(max(1, len(text) - 2))) for text in TEXTS]
    have = Counter(gram for each in grams for gram in each)
    weights = [{gram: count * (math.log((1 + len(TEXTS)) / (1 + have[gram])) + 1) for gram, count in each.items()} for each in grams]
    norms = [math.sqrt(sum(w * w for w in each.values())) for each in weights]
    expected = [[sum(w * b.get(gram, 0) for gram, w in a.items()) / x / y for b, y in zip(weights, norms)] for a, x in zip(weights, norms)]
    vectors = ns.tfidf(TEXTS)
    return torch.allclose(vectors @ vectors.T, torch.tensor(expected), atol=1e-5)


def pairs_right(ns):
    similarity = torch.tensor([[1.0, 0.9, 0.2], [0.9, 1.0, 0.95], [0.2, 0.95, 1.0]])
    return ns.similar_pairs(similarity, 0.9) == {(0, 1), (1, 2)} and ns.similar_pairs(similarity, 0.93) == {(1, 2)}


def jaccard_right(ns):
    return ns.jaccard({1, 2, 3}, {2, 3, 4}) == 0.5 and ns.jaccard({1}, {2}) == 0 and ns.jaccard({1, 2}, {1, 2}) == 1


def overlapping(count, seed=0):
    """两个集合，各 200 个，共有 count 个。"""
    rng = random.Random(seed)
    numbers = [str(number) for number in rng.sample(range(10**6), 400 - count)]
    return set(numbers[:200]), set(numbers[200 - count :])


def minhash_right(ns):
    """猜的相似度，平均起来就是杰卡德；换个种子就换一套次序。"""
    for count in (40, 120, 180):
        one, other = overlapping(count)
        guesses = [a.jaccard(b) for a, b in (ns.minhash([one, other], seed) for seed in range(1, 13))]
        true = count / (400 - count)
        if abs(sum(guesses) / 12 - true) > 4 * math.sqrt(true * (1 - true) / ns.PERMUTATIONS / 12) or len(set(guesses)) < 3:
            return False
    return True


def lsh_right(ns):
    """候选的对：有一段签名完全相同；i < j；自己不与自己比。"""
    rng = random.Random(1)
    sets = [overlapping(rng.choice((100, 150, 180, 195)), seed)[side] for seed in range(12) for side in (0, 1)]
    signatures = ns.minhash(sets, 1)
    pairs, b, r = ns.lsh_pairs(signatures)
    bands = [[tuple(each.hashvalues[k * r : (k + 1) * r]) for k in range(b)] for each in signatures]
    expected = {(i, j) for i in range(24) for j in range(i + 1, 24) if any(x == y for x, y in zip(bands[i], bands[j]))}
    return pairs == expected and len(expected) > 3


def groups_right(ns):
    rng = random.Random(2)
    for _ in range(30):
        pairs = {tuple(sorted(rng.sample(range(14), 2))) for _ in range(7)}
        found, left = [], set(range(14))
        while left:  # 从一条出发，能走到的都是一组
            group, edge = set(), {min(left)}
            while edge:
                group |= edge
                edge = {j for pair in pairs for i, j in (pair, pair[::-1]) if i in edge} - group
            left -= group
            found += [sorted(group)] if len(group) > 1 else []
        ours = ns.groups(pairs, 14)
        if sorted(ours) != sorted(found) or [len(each) for each in ours] != sorted(map(len, found), reverse=True):
            return False
    return True


def changes_right(ns):
    words, rng = "one two three four five six".split(), random.Random(3)
    for _ in range(30):
        upper, letter, fewer, mixed = (change(words, rng) for change in ns.CHANGES.values())
        wrong = [a != b for a, b in zip(letter, " ".join(words))]
        if ns.normalize(upper) != " ".join(words) or len(letter) != len(" ".join(words)) or sum(wrong) > 1 or len(fewer.split()) != 5 or sorted(mixed.split()) != sorted(words):
            return False
    return True


CHECKS = [normalize_right, shingles_right, tfidf_right, pairs_right, jaccard_right, minhash_right, lsh_right, groups_right, changes_right]
MUTANTS = [
    ('re.findall(r"\\w+", text.lower())', 're.findall(r"\\w+", text)', normalize_right),
    ('re.findall(r"\\w+", text.lower())', 're.findall(r"[a-z]+", text.lower())', normalize_right),
    ("return {text[i : i + GRAM] for i in range(max(1, len(text) - GRAM + 1))}", "return {text[i : i + GRAM] for i in range(len(text) - GRAM + 1)}", shingles_right),
    ("return {text[i : i + GRAM] for i in range(max(1, len(text) - GRAM + 1))}", "return {text[i : i + GRAM] for i in range(max(1, len(text) - GRAM))}", shingles_right),
    ("counts * idf, dim=1", "counts, dim=1", tfidf_right),
    ("counts * idf, dim=1", "(counts > 0) * idf, dim=1", tfidf_right),
    ("nn.functional.normalize(counts * idf, dim=1)", "counts * idf", tfidf_right),
    ("(counts > 0).sum(dim=0)", "counts.sum(dim=0)", tfidf_right),
    ("similarity.triu(diagonal=1)", "similarity", pairs_right),
    (" >= threshold).nonzero()", " > threshold).nonzero()", pairs_right),
    ("len(one & other) / len(one | other)", "len(one & other) / (len(one) + len(other))", jaccard_right),
    ("len(one & other) / len(one | other)", "len(one & other) / min(len(one), len(other))", jaccard_right),
    ("num_perm=PERMUTATIONS, seed=seed", "num_perm=PERMUTATIONS, seed=1", minhash_right),
    ("[gram.encode() for gram in each]", "[gram.encode() for gram in sorted(each)[:50]]", minhash_right),
    ("pairs.update((j, i) for j in lsh.query(signature))", "pairs.update((i, j) for j in lsh.query(signature))", lsh_right),
    ("threshold=LSH_THRESHOLD, num_perm", "threshold=0.95, num_perm", lsh_right),
    ("leader[max(find(i), find(j))] = min(find(i), find(j))", "leader[j] = i", groups_right),
    ("if len(group) > 1), key=len, reverse=True)", "if len(group) > 2), key=len, reverse=True)", groups_right),
    ("words[:gone] + words[gone + 1 :]", "words[:gone] + words[gone:]", changes_right),
]


@pytest.mark.parametrize("right", CHECKS, ids=lambda right: right.__name__)
def test_right(module, right):
    assert right(module)


@pytest.mark.parametrize("old, new, right", MUTANTS, ids=range(len(MUTANTS)))
def test_broken_scripts_are_caught(tmp_path, old, new, right):
    text = SCRIPT.read_text(encoding="utf-8")
    assert text.count(old) == 1, old
    (tmp_path / SCRIPT.name).write_text(text.replace(old, new), encoding="utf-8")
    assert not right(load(tmp_path / SCRIPT.name))


def run(module, monkeypatch, capsys, tmp_path, *arguments):
    monkeypatch.setattr(module, "OUTPUTS", tmp_path / "outputs")
    monkeypatch.setattr(sys, "argv", ["exp_near_duplicates.py", *map(str, arguments)])
    code = 0
    try:
        module.main()
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def test_quick(module, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("LLM_DATA_DIR", "")
    code, out, _ = run(module, monkeypatch, capsys, tmp_path, "--quick")
    assert code == 0 and "不下结论" in out and "✗" not in out and out.count("✓") == 5
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["near_duplicates_quick.png"]


def entries(*instructions):
    return [{"instruction": text, "input": "", "output": "The capital is Berlin, of course."} for text in instructions]


def test_my_own_file(module, monkeypatch, capsys, tmp_path):
    """查得出，删得掉；原来的文件不动；答案不同的不删。"""
    mine, out_path = tmp_path / "mine.json", tmp_path / "clean.json"
    rows = entries("What is the capital of Germany?", "what is the capital of Germany", "Name a fruit that is yellow.", "What is the capital of Germany?")
    rows[3]["output"] = "I do not know anything about geography, sorry about that."
    mine.write_text(json.dumps(rows), encoding="utf-8")
    before = mine.read_bytes()
    code, out, _ = run(module, monkeypatch, capsys, tmp_path, "--file", mine, "--out", out_path)
    assert code == 0 and "4 条留下 3 条" in out and mine.read_bytes() == before
    assert json.loads(out_path.read_text(encoding="utf-8")) == [rows[0], rows[2], rows[3]] and not list(tmp_path.glob("*.part"))


def test_bad_input_is_one_sentence(module, monkeypatch, capsys, tmp_path):
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps(entries("a b c", "d e f")), encoding="utf-8")
    for arguments, said in [(["--out", "x.json"], "--file"), (["--file", mine, "--out", mine], "换个名字"), (["--file", tmp_path / "absent.json"], "absent.json"), (["--file", mine, "--out", tmp_path / "no" / "x.json"], "x.json")]:
        code, _, error = run(module, monkeypatch, capsys, tmp_path, *arguments)
        assert code == 2 and said in error.splitlines()[-1] and "Traceback" not in error, arguments
    monkeypatch.setitem(sys.modules, "datasketch", None)
    code, _, error = run(module, monkeypatch, capsys, tmp_path, "--quick")
    assert code == 2 and "requirements-data.txt" in error.splitlines()[-1]
