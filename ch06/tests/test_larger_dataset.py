"""exp_larger_dataset：TF-IDF、逻辑回归与另写的（有 scikit-learn 就与它）相同；造的影评，标签与一个另写的读法相同，一对只差词序；
存下的中间结果接着算、与从头算的相同；典型的错（IDF 数错、没有缩放、用考卷挑 C、偷看考卷的词……）一犯测试就变红；坏参数。

运行：python -m pytest ch06/tests/test_larger_dataset.py
用随机的小模型，不需要 SmolLM2；没有 scikit-learn，与它比的那一条跳过。
"""

import csv
import importlib.util
import math
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "ch06" / "experiments" / "exp_larger_dataset.py"
LLAMA = {"vocab_size": 60, "context_length": 64, "emb_dim": 16, "n_heads": 4, "n_layers": 3, "hidden_dim": 24, "n_kv_groups": 2, "rope_base": 10_000, "rope_freq": None, "norm_eps": 1e-5}
TEXTS = ["The plot is dull, dull and flat.", "A film I liked: the plot moves!", "the the the", "Not dull at all -- not flat, not dull.", "I x y", "At 10pm the café closed"]


def load(path=SCRIPT, name="exp_larger_dataset"):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ns():
    yield load()
    del sys.modules["exp_larger_dataset"]


def matrix(ns, train, texts, longest):
    words = ns.learn_vocabulary([ns.terms(text, longest) for text in train])
    return ns.tfidf([ns.terms(text, longest) for text in texts], *words).to_dense(), words[0]


def by_hand(train, texts, longest):
    """另写的 TF-IDF：一格一格地算。"""

    def grams(text):
        words, found = [word.strip(".,:!-") for word in re.split(r"[\s]+", text.lower())], []
        words = [word for word in words if len(word) > 1]
        for n in range(1, longest + 1):
            found += [" ".join(words[i : i + n]) for i in range(len(words)) if i + n <= len(words)]
        return found

    names = sorted({gram for text in train for gram in grams(text)})
    table = []
    for text in texts:
        row = []
        for name in names:
            df = sum(name in grams(other) for other in train)
            row.append(grams(text).count(name) * (math.log((1 + len(train)) / (1 + df)) + 1))
        length = math.sqrt(sum(value * value for value in row)) or 1
        table.append([value / length for value in row])
    return torch.tensor(table, dtype=torch.float64), names


def newton(x, y, strength):
    """另写的逻辑回归：牛顿法，答案是 0 或 1，偏置是多出来的一列，不罚。"""
    x, y = np.hstack([x.numpy(), np.ones((len(x), 1))]), (y.numpy() + 1) / 2
    penalty = np.diag([1.0] * (x.shape[1] - 1) + [0.0])
    w = np.zeros(x.shape[1])
    for _ in range(60):
        p = 1 / (1 + np.exp(-x @ w))
        w -= np.linalg.solve(strength * (x.T * (p * (1 - p))) @ x + penalty, strength * x.T @ (p - y) + penalty @ w)
    return w[:-1], w[-1]


def problem(n=60, w=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, w, generator=generator, dtype=torch.float64)
    return x, torch.where(x[:, 0] + 0.8 + torch.randn(n, generator=generator, dtype=torch.float64) > 0, 1.0, -1.0).double()


def toy(ns, tmp_path, noisy=False):
    """160 条：40 条训练，20 条验证，90 条考，10 条换了词；小 Llama，随便的词元。好评爱用大的编号和 good。"""
    rng = np.random.RandomState(3)
    answers = torch.tensor([1.0, -1.0] * 80, dtype=torch.float64)
    vocabulary = "good fine plot film story cast rain bad poor late".split()
    texts, messages = [], []
    for i, answer in enumerate(answers.tolist()):
        lean = np.linspace(1, 3, 10)[:: int(-answer)] ** (0.5 if noisy else 2)
        texts.append(" ".join(rng.choice(vocabulary + [f"odd{i}"], size=rng.randint(4, 9), p=np.append(lean, 1) / (lean.sum() + 1))))
        messages.append(torch.tensor(rng.randint(5 + 15 * (answer > 0), 45 + 15 * (answer > 0), size=rng.randint(2, 9))))
    place = [list(range(a, b)) for a, b in ((0, 40), (40, 60), (60, 150), (150, 160))]
    data = SimpleNamespace(texts=texts, kinds=["甲", "乙"] * 80, answers=answers, train=place[0], pool=place[0], validation=place[1], test=place[2], fresh=place[3])
    torch.manual_seed(0)
    base = SimpleNamespace(kind=ns.LlamaModel, cfg=LLAMA, state=ns.LlamaModel(LLAMA).state_dict(), messages=messages, labels=(answers > 0).long(), answers=answers, pad=7)
    ns.load_reviews, ns.prepare, ns.OUTPUTS, ns.CHUNK = lambda *_: data, lambda *_: base, tmp_path, 32
    (tmp_path / "exp_larger_dataset").mkdir(exist_ok=True)
    return data, base


WHERE = ("toy", "x", 128, False)


def rights(marks):
    return "".join(str(int(mark)) for mark in marks)


# ---- 每条检查返回成立吗；弄坏代码之后，它必须不成立 ----


def tfidf_right(ns, _):
    for longest in (1, 2, 3):
        for train in (TEXTS, TEXTS[:3]):
            (found, vocabulary), (wanted, names) = matrix(ns, train, TEXTS, longest), by_hand(train, TEXTS, longest)
            if list(vocabulary) != names or not torch.allclose(torch.nan_to_num(found), wanted, atol=1e-12):
                return False
    return True


def logistic_right(ns, _):
    """与牛顿法的相同；稀疏的、稠密的相同；偏置不罚。"""
    x, y = problem()
    for strength in (0.1, 1.0, 30.0):
        wanted, wanted_bias = newton(x, y, strength)
        for each in (x, x.to_sparse()):
            weight, bias = ns.fit_logistic(each, y, strength)
            if not np.allclose(weight.numpy(), wanted, atol=1e-4) or abs(bias - wanted_bias) > 1e-4:
                return False
    return True


def choice_right(ns, _):
    """挑的是验证集上最好的；一样好，挑惩罚重的。"""
    (x, y), (valid, answers) = problem(20, 12, 1), problem(200, 12, 2)
    penalties = (1e-4, 0.01, 1.0, 100.0)
    marks = []
    for strength in penalties:
        w, b = newton(x, y, strength)
        marks.append(((valid.numpy() @ w + b > 0) == (answers.numpy() > 0)).mean())
    *_, found = ns.best_logistic(x, y, valid, answers, penalties)
    easy = torch.tensor([[3.0], [-3.0]] * 5, dtype=torch.float64)
    return marks[penalties.index(found)] == max(marks) > min(marks) and ns.best_logistic(easy, easy[:, 0].sign(), easy, easy[:, 0].sign(), (0.1, 1.0, 10.0))[2] == 0.1


KINDS = {"直说": 4, "否定": 2, "转折": 2, "转述": 2}


def twins_right(ns, _):
    rows = ns.make_reviews(400, 5, KINDS)
    if rows != ns.make_reviews(400, 5, KINDS) or rows == ns.make_reviews(400, 6, KINDS) or Counter(kind for *_, kind in rows) != {kind: 40 * share for kind, share in KINDS.items()}:
        return False
    for (one, positive, kind), (two, negative, other) in zip(rows[::2], rows[1::2]):
        a, b = (re.findall(r"\w+", text.lower()) for text in (one, two))
        differ = {word for pair in zip(a, b) for word in pair if pair[0] != pair[1]}
        if (positive, negative) != (1, 0) or kind != other or len(a) != len(b) or not differ or not differ <= {*ns.GOOD, *ns.BAD}:
            return False
        if (kind in ("转折", "转述")) != (Counter(a) == Counter(b)):
            return False
    return True


def labels_right(ns, _):
    """一个另写的读法：从句子的结构读出好坏，与标签相同。"""
    value = {**dict.fromkeys(ns.GOOD, 1), **dict.fromkeys(ns.BAD, 0)}
    for text, label, kind in ns.make_reviews(600, 9, KINDS):
        words = re.findall(r"\w+|[,.;]", text.lower())
        places = [i for i, word in enumerate(words) if word in value]
        first, last = value[words[places[0]]], value[words[places[-1]]]
        sentence = " ".join(words)
        if kind == "直说":
            read = first if first == last and len(places) == 2 else None
        elif kind == "否定":
            read = 1 - first if len(places) == 1 and re.search(r"\b(not|nothing|nobody)\b", sentence) else None
        elif kind == "转折":
            read = last if ", but the" in sentence.replace(" ,", ",") or "although" in words[: places[0]] else first
        else:
            mine = max(i for i, pair in enumerate(zip(words, words[1:])) if pair in (("to", "me"), ("i", "found")))
            read = next(value[words[i]] for i in places if i > mine)
        if read != label:
            return False
    return True


def freeze_right(ns, tmp_path):
    """分批存的，与一条一条算的只差半精度；第二次不再算；秒数都记着。"""
    data, base = toy(ns, tmp_path)
    model = ns.build(base, ns.SETTING | {"blocks": 2, "train": "head"}, 0)
    paths = ns.freeze(WHERE, "m", 2)
    times = [path.stat().st_mtime_ns for path in paths]
    items = ns.thaw(WHERE, "m", 2)
    if len(paths) != 5 or sorted(items) != list(range(160)) or [path.stat().st_mtime_ns for path in ns.freeze(WHERE, "m", 2)] != times:
        return False
    with torch.no_grad():
        return all(torch.allclose(items[i].float(), model(base.messages[i][None], stop=2)[0], atol=5e-3) for i in range(160)) and all(torch.load(path)["seconds"] > 0 for path in paths)


def plain_right(ns, tmp_path):
    """TF-IDF：词表只来自抽中的训练集，C 由验证集挑；与另写的一题不差。"""
    data, _ = toy(ns, tmp_path, noisy=True)
    for method, longest in ((ns.WORDS, 1), (ns.PAIRS, 2)):
        for seed in (1, 2, 3):
            rows = ns.labelled(data.pool, data.answers, 24, seed)
            texts = lambda places: [data.texts[i] for i in places]  # noqa: E731
            x, valid, asked = (by_hand(texts(rows), texts(part), longest)[0] for part in (rows, data.validation, data.test + data.fresh))
            fits = [newton(x, data.answers[rows], strength) for strength in ns.SETTING["penalties"]]
            marks = [((valid.numpy() @ w + b > 0) == (data.answers[data.validation].numpy() > 0)).sum() for w, b in fits]
            w, b = fits[int(np.argmax(marks))]
            wanted = (asked.numpy() @ w + b > 0) == (data.answers[data.test + data.fresh].numpy() > 0)
            found = ns.learn(WHERE, "", method, 24, seed, tuple(ns.SETTING.items()))
            if found["right"] != rights(wanted) or found["choice"] != ns.SETTING["penalties"][int(np.argmax(marks))]:
                return False
    return True


def probe_right(ns, tmp_path):
    """探针：各个词元取平均，照训练集的均值、标准差，每一维同样重。"""
    data, base = toy(ns, tmp_path)
    model = ns.build(base, ns.SETTING | {"blocks": 2, "train": "head"}, 0)
    with torch.no_grad():
        means = torch.stack([model(ids[None], stop=2)[0].half().float().mean(dim=0) for ids in base.messages]).double()
    for seed in (1, 2):
        rows = ns.labelled(data.pool, data.answers, 24, seed)
        x = (means - means[rows].mean(dim=0)) / means[rows].std(dim=0) / 4
        w, b = newton(x[rows], data.answers[rows], 10.0)
        wanted = (x[data.test + data.fresh].numpy() @ w + b > 0) == (data.answers[data.test + data.fresh].numpy() > 0)
        found = ns.learn(WHERE, "p", "探针", 24, seed, tuple((ns.SETTING | {"blocks": 3, "penalties": (10.0,)}).items()))
        if sum(a != b for a, b in zip(found["right"], rights(wanted))) > 1:  # 一批一批算的与一条一条算的差舍入误差
            return False
    return True


def finetune_right(ns, tmp_path):
    """微调：看几遍；冻结的真的没有动；考卷上的，与那个模型从头、一条一条算的一题不差。"""
    data, base = toy(ns, tmp_path)
    kept, real = [], ns.train
    ns.train = lambda model, items, labels, lengths, start, setting, seed: kept.append((model, setting["epochs"], len(items), start)) or real(model, items, labels, lengths, start, setting, seed)
    for count, epochs in ((24, 5), (8, 12), (40, 3)):
        found = ns.learn(WHERE, "f", "微调", count, 1, tuple((ns.SETTING | {"blocks": 3, "seen": 120, "lr": 1e-2}).items()))
        model = kept[-1][0]
        with torch.no_grad():
            wanted = [model(base.messages[i][None])[0, -1].argmax() == base.labels[i] for i in data.test + data.fresh]
        if kept[-1][1:] != (epochs, count, 2) or found["choice"] != epochs or sum(a != b for a, b in zip(found["right"], rights(wanted))) > 2:
            return False
        same = [torch.equal(p, base.state[name]) for name, p in model.named_parameters() if name in base.state and p.shape == base.state[name].shape]
        moved = [name for name, p in model.named_parameters() if name.startswith("trf_blocks.2") and not torch.equal(p, base.state[name])]
        if sum(not each for each in same) != len(moved) + 1 or not moved:  # 多的一个是 final_norm
            return False
    ns.train = real
    return True


CHECKS = [tfidf_right, logistic_right, choice_right, twins_right, labels_right, freeze_right, plain_right, probe_right, finetune_right]
BROKEN = [
    (tfidf_right, "range(len(words) - n + 1)", "range(len(words) - n)"),
    (tfidf_right, "text.lower())", "text)"),
    (tfidf_right, r'r"\b\w\w+\b"', r'r"\b\w+\b"'),
    (tfidf_right, "(1 + len(counts)) / (1 + found[term])) + 1", "(1 + len(counts)) / (1 + found[term]))"),
    (tfidf_right, "(1 + len(counts)) / (1 + found[term])", "len(counts) / found[term]"),
    (tfidf_right, "Counter(chain.from_iterable(counts))", "Counter(chain.from_iterable(each.elements() for each in counts))"),
    (tfidf_right, "values = times * idf[columns]", "values = idf[columns]"),
    (tfidf_right, "values / lengths[rows]", "values"),
    (tfidf_right, "values.square()).sqrt()", "values)"),
    (logistic_right, "pull = -answers", "pull = answers"),
    (logistic_right, "torch.sigmoid(-answers * scores)", "torch.sigmoid(answers * scores)"),
    (logistic_right, "weight.grad = weight + strength *", "weight.grad = strength *"),
    (logistic_right, "weight.grad = weight + strength * (", "weight.grad = weight + ("),
    (logistic_right, "bias.grad = strength * pull.sum()[None]", "bias.grad = bias + strength * pull.sum()[None]"),
    (logistic_right, "bias.grad = strength * pull.sum()", "bias.grad = strength * pull.mean()"),
    (logistic_right, "0.5 * weight.square().sum() + strength", "weight.square().sum() + strength"),
    (choice_right, "return max(fits", "return min(fits"),
    (choice_right, "for strength in penalties]", "for strength in penalties[::-1]]"),
    (twins_right, "again = random.Random(start)", "again = rng"),
    (twins_right, "(0, bad, poor, good)", "(0, bad, poor, poor)"),
    (labels_right, '"Although the {a} is {o}{t}, the {b} is {x}', '"Although the {a} is {x}{t}, the {b} is {o}'),
    (labels_right, '"I found the {a} {x}{t}; {who} found it {o}."', '"I found the {a} {o}{t}; {who} found it {x}."'),
    (labels_right, '"There is nothing {o} about the {a}."', '"There is nothing {x} about the {a}."'),
    (freeze_right, "[found[i] for i in range(len(part))]", "[*found.values()]"),
    (freeze_right, "base.messages[part[i]]", "base.messages[i]"),
    (freeze_right, "if not paths[-1].is_file():", "if True:"),
    (plain_right, "look(data.validation), valid, setting", 'look(asked), data.answers[asked], setting'),
    (plain_right, "words = learn_vocabulary(seen)", "words = learn_vocabulary(seen + counts(asked))"),
    (plain_right, "data.test + data.fresh, time.process_time()", "data.fresh + data.test, time.process_time()"),
    (plain_right, "+ line[1]) > 0) ==", "- line[1]) > 0) =="),
    (probe_right, ".float().mean(dim=0) for i in rows", ".float()[-1] for i in rows"),
    (probe_right, "x.shape[1] ** 0.5", "x.shape[1]"),
    (probe_right, "(means(rows) - middle) / spread", "means(rows) / spread"),
    (finetune_right, 'base, stop = prepare(*where), setting["blocks"] - 1', 'base, stop = prepare(*where), setting["blocks"] - 2'),
    (finetune_right, 'min(12, max(1, round(setting["seen"] / count)))', 'round(setting["seen"] / count)'),
    (finetune_right, "right[group] = classify(model, [states[i] for i in group]", "right[group] = classify(model, [states[len(group) - 1 - i] for i in range(len(group))]"),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_right(check, tmp_path):
    assert check(load(name="exp_larger_dataset_fresh"), tmp_path)  # 有的检查要换掉里面的函数，各用一份


@pytest.mark.parametrize("check, old, new", BROKEN, ids=lambda value: value.__name__ if callable(value) else "")
def test_broken_is_seen(check, old, new, tmp_path):
    """把那一处改坏，检查就不成立（或出错）：检查不是摆设。"""
    document, start, code = SCRIPT.read_text(encoding="utf-8").partition("\nimport argparse\n")  # 文档的「动手改」里也写着这些
    assert code.count(old) == 1, (code.count(old), old)
    path = tmp_path / "exp_larger_dataset.py"
    path.write_text(document + start + code.replace(old, new), encoding="utf-8")
    try:
        assert not check(load(path, "broken"), tmp_path)
    except (RuntimeError, IndexError, ValueError, KeyError, AttributeError, TypeError, StopIteration):
        pass


def test_scikit_learn(ns):
    """与 scikit-learn 的 TfidfVectorizer、LogisticRegression 相同。"""
    text = pytest.importorskip("sklearn.feature_extraction.text", reason="没有装 scikit-learn：pip install scikit-learn")
    from sklearn.linear_model import LogisticRegression

    texts, labels = zip(*[(text, label) for text, label, _ in ns.make_reviews(200, 3, KINDS)])
    for longest in (1, 2):
        theirs = text.TfidfVectorizer(ngram_range=(1, longest))
        wanted = theirs.fit_transform(texts[:150])
        ours, vocabulary = matrix(ns, texts[:150], texts[:150], longest)
        assert list(vocabulary) == theirs.get_feature_names_out().tolist()
        torch.testing.assert_close(ours, torch.tensor(wanted.toarray()))
        model = LogisticRegression(C=10.0, tol=1e-8, max_iter=10_000).fit(wanted, labels[:150])
        weight, bias = ns.fit_logistic(ours, torch.tensor(labels[:150], dtype=torch.float64) * 2 - 1, 10.0)
        assert np.allclose(weight.numpy(), model.coef_[0], atol=2e-3) and abs(bias - model.intercept_[0]) < 2e-3


# ---- 读影评 ----


def reviews_of(count):
    return [(f"Review {i} <br />was {'good' if i % 2 else 'bad'}", i % 2) for i in range(count)]


def test_folder_and_csv(ns, tmp_path):
    """IMDb 的文件夹、两种 CSV，读出来一样；重样的去掉；70%、10%、20%，互不重叠。"""
    rows = reviews_of(200)
    for i, (text, label) in enumerate(rows):
        folder = tmp_path / "aclImdb" / ("train" if i < 100 else "test") / ("pos" if label else "neg")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}_7.txt").write_text(text, encoding="utf-8")
    for name, head, names in (("a.csv", ["review", "sentiment"], ("negative", "positive")), ("b.csv", ["text", "label"], ("0", "1"))):
        with open(tmp_path / name, "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([head, *[(text, names[label]) for text, label in rows + rows[:7]]])
    wanted = {(text.replace("<br />", " "), label) for text, label in rows}
    for path in (tmp_path / "aclImdb", tmp_path, tmp_path / "a.csv", tmp_path / "b.csv"):
        found = ns.read_rows(path)
        assert len(found) == 200 and {(text, label) for text, label, *_ in found} == wanted
        data = ns.load_reviews(path, False)
        parts = [data.train, data.validation, data.test, data.fresh]
        assert [len(part) for part in parts] == [140, 20, 40, 0] and sorted(sum(parts, [])) == list(range(200)) and len(set(data.texts)) == 200
        assert all((answer > 0) == ("good" in text) for text, answer in zip(data.texts, data.answers)) and set(data.kinds) == {"不到 100 个词"}
    small = ns.load_reviews(tmp_path / "a.csv", True)
    assert [len(part) for part in (small.train, small.validation, small.test)] == [100, 20, 40]


def test_made_reviews(ns, tmp_path):
    """造的一份：照写好的分；考卷里没有训练过的；一对都在同一份里；与 setup/data 里写出的逐字节相同。"""
    path = ns.write_reviews(tmp_path / "r.csv", ns.PARTS)
    data = ns.load_reviews(path, False)
    assert [len(part) for part in (data.train, data.validation, data.test, data.fresh)] == [*ns.PARTS.values()] and not data.answers.sum() and len(set(data.texts)) == 5200
    assert {data.kinds[i] for i in data.test} == set(KINDS) and {data.kinds[i] for i in data.fresh} == {"换了评价词"}
    seen = set(re.findall(r"\w+", " ".join(data.texts[i] for i in data.train).lower()))
    assert not seen & {*ns.NEW[0], *ns.NEW[1]} and {*ns.GOOD, *ns.BAD} <= seen
    made = subprocess.run([sys.executable, ROOT / "setup" / "data" / "make_reviews.py", tmp_path / "s.csv"], capture_output=True, encoding="utf-8")
    assert made.returncode == 0 and "5,200" in made.stdout and (tmp_path / "s.csv").read_bytes() == path.read_bytes()


def test_where_reviews_come_from(ns, tmp_path, monkeypatch):
    monkeypatch.setattr(ns, "OUTPUTS", tmp_path / "outputs")
    monkeypatch.setenv("LLM_DATA_DIR", str(tmp_path))
    assert ns.find_reviews(None, True) == tmp_path / "outputs" / "exp_larger_dataset" / "reviews_quick.csv"
    (tmp_path / "imdb.csv").write_text("", encoding="utf-8")
    assert ns.find_reviews(None, False) == tmp_path / "imdb.csv"
    (tmp_path / "aclImdb").mkdir()
    assert ns.find_reviews(None, False) == tmp_path / "aclImdb" and ns.find_reviews("my.csv", False) == Path("my.csv")


# ---- 印出的话 ----


def results_of(ns, data, scores):
    """方法 → 几条 → 五个种子，对了几成照 scores。"""
    marks = lambda share: {"right": "".join("1" if i < round(share * len(data.test)) else "0" for i in range(len(data.test) + len(data.fresh))), "choice": 1, "fit": 2.0, "ask": 1.0}  # noqa: E731
    return {method: {count: [marks(share) for share in shares] for count, shares in sizes.items()} for method, sizes in scores.items()}


def test_verdicts(ns, tmp_path, capsys):
    """差得比散布大才说更高；对照分不出；赶上要几条，照表里的数。"""
    fresh = load(name="exp_larger_dataset_verdicts")
    data, _ = toy(fresh, tmp_path)
    low, high, noisy = [0.50, 0.52, 0.51, 0.50, 0.52], [0.80, 0.82, 0.81, 0.80, 0.83], [0.30, 0.90, 0.50, 0.60, 0.40]
    results = results_of(fresh, data, {fresh.WORDS: {24: low, 40: low}, fresh.PAIRS: {24: low, 40: high}, "小，探针": {24: noisy, 40: high}, "小，微调": {24: high, 40: low}})
    spent = fresh.report(data, results, {"小，探针": 0.01, "小，微调": 0.01})
    assert spent["小，微调"]["training"] == pytest.approx(2.0 + 0.01 * (40 + 20)) and spent["小，微调"]["asking"] == pytest.approx(10 + 10) and spent[fresh.WORDS]["asking"] == pytest.approx(10)
    fresh.judge(data, results, {24: results[fresh.PAIRS][24][::-1], 40: results[fresh.PAIRS][40]})
    out = capsys.readouterr().out
    assert "小，微调：24 条时更高；它 24 条的 81.3%，TF-IDF，一两个词 要 40 条" in out and "小，探针：哪一档都不更高" in out
    control = next(line for line in out.splitlines() if line.startswith("对照"))
    assert control.count("分不出") == 2 and "更" not in control


# ---- 从头到尾 ----


def run(ns, monkeypatch, capsys, tmp_path, *arguments):
    monkeypatch.setattr(ns, "OUTPUTS", tmp_path / "outputs")
    monkeypatch.setattr(sys, "argv", ["exp_larger_dataset.py", *map(str, arguments)])
    code = 0
    try:
        ns.main()
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def test_quick(ns, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("LLM_DATA_DIR", "")
    code, out, _ = run(ns, monkeypatch, capsys, tmp_path, "--quick")
    assert code == 0 and "不下结论" in out and out.count("✓") == 5 and "✗" not in out and "更高" not in out and "SmolLM2" not in out
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir()) == ["exp_larger_dataset", "larger_dataset_quick.png"]
    assert run(ns, monkeypatch, capsys, tmp_path, "--quick")[1] == out  # 第二次读存着的


def test_bad_input_is_one_sentence(ns, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("LLM_DATA_DIR", "")
    (tmp_path / "bad.csv").write_text("text,label\nhello,maybe\n", encoding="utf-8")
    (tmp_path / "few.csv").write_text("text,label\nhello,1\nbye,0\n", encoding="utf-8")
    (tmp_path / "gbk.csv").write_bytes("text,label\n你好,1\n".encode("gbk"))
    (tmp_path / "empty").mkdir()
    cases = [(["--seeds", 2], "--seeds"), (["--data", tmp_path / "没有"], "读不了"), (["--data", tmp_path / "bad.csv"], "读不了"), (["--data", tmp_path / "gbk.csv"], "读不了")]
    for arguments, said in [*cases, (["--data", tmp_path / "few.csv"], "50 条"), (["--data", tmp_path / "empty"], "50 条")]:
        code, _, error = run(ns, monkeypatch, capsys, tmp_path, *arguments)
        assert code == 2 and said in error.splitlines()[-1] and "Traceback" not in error, arguments

