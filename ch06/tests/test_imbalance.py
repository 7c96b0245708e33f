"""exp_imbalance：逻辑回归、权重、先验修正、各种成绩、界线都与另写的相同；弄坏了测试就变红；坏参数。

运行：python -m pytest ch06/tests/test_imbalance.py
用随机的小数据，不需要 SmolLM2。
"""

import importlib.util
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "exp_imbalance.py"


def load(path=SCRIPT, name="exp_imbalance"):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # inspect.getsource 要找得到它
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ns():
    yield load()
    del sys.modules["exp_imbalance"]


def toy(seed=0, n=120, d=4, spam=0.2):
    """两类分得不太开的点，最后一列是 1；分数有不少相同的。"""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(n, generator=generator) < spam).long()
    x = torch.randn(n, d, generator=generator, dtype=torch.float64) + labels[:, None]
    scores = (x.sum(dim=1) * 2).round() / 2
    return torch.nn.functional.pad(x, (0, 1), value=1.0), labels, scores


# ---- 每条检查返回成立吗；弄坏代码之后，它必须不成立 ----


def logistic_right(ns):
    """与 PyTorch 的损失（pos_weight）、现成的优化器（LBFGS）得到的相同；偏置不罚。"""
    x, labels, _ = toy()
    for penalty, weight in ((0.01, 1.0), (0.3, 5.0)):
        weights = torch.where(labels == 1, weight, 1.0).double()
        layer = torch.nn.Linear(4, 1).double()
        torch.nn.init.zeros_(layer.weight), torch.nn.init.zeros_(layer.bias)
        optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=300, tolerance_grad=1e-11, tolerance_change=1e-14, line_search_fn="strong_wolfe")
        criterion = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(weight).double(), reduction="sum")

        def closure(layer=layer, optimizer=optimizer, criterion=criterion, weights=weights, penalty=penalty):
            optimizer.zero_grad()
            loss = criterion(layer(x[:, :4])[:, 0], labels.double()) / weights.sum() + penalty / 2 * layer.weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        theirs = torch.cat([layer.weight[0], layer.bias]).detach()
        if not torch.allclose(ns.fit_logistic(x, labels, weights, penalty), theirs, atol=1e-5):
            return False
    return True


def hard_start_converges(ns):
    """从很远的地方出发，牛顿法走过头也回得来。"""
    x, labels, _ = toy()
    weights = torch.ones(len(labels), dtype=torch.float64)
    far = ns.fit_logistic(x, labels, weights, 0.001, torch.full((5,), 8.0, dtype=torch.float64))
    return torch.allclose(far, ns.fit_logistic(x, labels, weights, 0.001), atol=1e-5)


def weights_right(ns):
    labels = torch.tensor([1] * 5 + [0] * 20)
    make = lambda remedy, seed=0: ns.sample_weights(labels, remedy, torch.Generator().manual_seed(seed))  # noqa: E731
    right = make(ns.PLAIN).eq(1).all() and make(ns.WEIGHTED).tolist() == [4.0] * 5 + [1.0] * 20
    over, under = make(ns.OVER), make(ns.UNDER)
    right = right and over[:5].sum() == 20 and over[5:].eq(1).all() and over.eq(over.round()).all()
    right = right and under[:5].eq(1).all() and sorted(under[5:].tolist()) == [0.0] * 15 + [1.0] * 5
    return bool(right and not torch.equal(make(ns.UNDER, 1), under) and not torch.equal(make(ns.OVER, 1), over))


def correction_undoes_the_weights(ns):
    """一个 0、1 的特征加偏置，模型装得下任何概率：加权学到的，修正之后就是不加权学到的，每格正是真的比例。"""
    feature = torch.tensor([0.0] * 50 + [1.0] * 50).double()
    labels = torch.tensor([1] * 4 + [0] * 46 + [1] * 15 + [0] * 35)
    x = torch.stack([feature, torch.ones(100).double()], dim=1)
    plain = x @ ns.fit_logistic(x, labels, torch.ones(100).double(), 1e-10)
    for weight in (3.0, 0.5):
        logits = x @ ns.fit_logistic(x, labels, torch.where(labels == 1, weight, 1.0).double(), 1e-10)
        fixed = ns.correct_prior(logits, weight)
        if not (torch.allclose(fixed, plain, atol=1e-4) and torch.allclose(torch.sigmoid(fixed[[0, 99]]), torch.tensor([0.08, 0.3]).double(), atol=1e-4)):
            return False
    return True


def measures_right(ns):
    for seed, threshold in itertools.product(range(3), (0.0, 1.5)):
        _, labels, scores = toy(seed)
        counts = {key: sum((s > threshold, y == 1) == key for s, y in zip(scores.tolist(), labels.tolist())) for key in itertools.product((True, False), repeat=2)}
        tp, fp, fn, tn = counts[True, True], counts[True, False], counts[False, True], counts[False, False]
        precision, recall = tp / (tp + fp), tp / (tp + fn)
        theirs = [(tp + tn) / len(labels), (recall + tn / (tn + fp)) / 2, precision, recall, 2 * precision * recall / (precision + recall)]
        if not math.isclose(sum(abs(a - b) for a, b in zip(ns.measures(scores, labels, threshold).values(), theirs)), 0, abs_tol=1e-9):
            return False
    return math.isnan(ns.measures(torch.full((4,), -1.0), torch.tensor([0, 0, 0, 1]))["查准率"])


def slow_average_precision(scores, labels):
    """照定义：界线依次取每一种分数。"""
    total, before = 0.0, 0.0
    for level in sorted(set(scores.tolist()), reverse=True):
        chosen = [y for s, y in zip(scores.tolist(), labels.tolist()) if s >= level]
        recall = sum(chosen) / labels.sum().item()
        total, before = total + (recall - before) * sum(chosen) / len(chosen), recall
    return total


def average_precision_right(ns):
    known = ns.average_precision(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1]))  # scikit-learn 文档里的例子：0.83
    same = all(math.isclose(ns.average_precision(scores, labels), slow_average_precision(scores, labels), rel_tol=1e-5) for _, labels, scores in map(toy, range(4)))
    constant = ns.average_precision(torch.zeros(10), torch.tensor([1, 0, 0, 0, 1, 0, 0, 0, 0, 0]))
    return same and math.isclose(known, 5 / 6, rel_tol=1e-5) and math.isclose(constant, 0.2, rel_tol=1e-5)


def calibration_right(ns):
    generator = torch.Generator().manual_seed(1)
    probs, labels = torch.cat([torch.rand(200, generator=generator), torch.tensor([0.0, 1.0, 0.3])]).double(), torch.cat([(torch.rand(200, generator=generator) < 0.4).long(), torch.tensor([0, 1, 0])])
    error = 0.0
    for k in range(10):
        inside = [(p, y) for p, y in zip(probs.tolist(), labels.tolist()) if min(int(p * 10), 9) == k]
        error += abs(sum(p for p, _ in inside) - sum(y for _, y in inside)) / len(probs)
    size, said, true = ns.calibration_bins(probs, labels)
    return math.isclose(ns.expected_calibration_error(probs, labels), error, rel_tol=1e-9) and size.sum() == 203 and bool((said <= 1).all() and (true <= 1).all())


def threshold_right(ns):
    """代价最小：与把每一处都试一遍的相同；误杀越贵，界线越高。"""
    for seed in range(4):
        _, labels, scores = toy(seed)
        before = -math.inf
        for a, b in ((1, 10), (1, 1), (10, 1)):
            mine = ns.cheapest_threshold(scores, labels, a, b)
            plain = lambda level, a=a, b=b, scores=scores, labels=labels: 1000 * sum(a * (s > level and y == 0) + b * (s <= level and y == 1) for s, y in zip(scores.tolist(), labels.tolist())) / len(labels)  # noqa: E731
            best = min(plain(level + 0.01) for level in [scores.min().item() - 1, *set(scores.tolist())])
            if mine < before or not math.isclose(plain(mine), best, rel_tol=1e-6) or not math.isclose(ns.cost(scores, labels, mine, a, b), plain(mine), rel_tol=1e-6):
                return False
            before = mine
    return True


def split_right(ns):
    """两类按比例切；改一条测试集的短信，验证集的分数一位不变，测试集只变那一条。"""
    x, labels, _ = toy(5, 300, 6, 0.3)
    path, changed, ns.PENALTIES = ns.tmp / "data.pt", [], (0.1, 0.01)
    save = lambda x: (torch.save({"features": x[:, :6].half(), "labels": labels}, path), ns.run_seed(str(path), 0, 3))[1]  # noqa: E731
    before = save(x)
    for part, share in (("验证", 0.2), ("测试", 0.3)):
        if abs(sum(before[part]["labels"]) - share * labels.sum().item()) > 1 or abs(len(before[part]["labels"]) - share * 300) > 2:
            return False
    for row in range(20, 40):
        moved = x.clone()
        moved[row, :6] += 0.1
        after = save(moved)
        changed.append(tuple(sum(a != b for a, b in zip(before[part][ns.PLAIN], after[part][ns.PLAIN])) for part in ("验证", "测试")))
    few = ns.run_seed(str(path), 0.1, 3)
    spam, total = (sum(f(few[part]["labels"]) for part in ("验证", "测试")) for f in (sum, len))
    return (0, 1) in changed and (1, 0) in changed and abs(spam / total - 0.1) < 0.03 and before["比例"][ns.PLAIN] == 1 and before["比例"][ns.WEIGHTED] > 1.5


def order_right(ns):
    a, b = torch.tensor([1.0, 2.0, 3.0, 3.0]), torch.tensor([1.0, 3.0, 2.0, 4.0])
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    expected = sum((a[i] - a[j]) * (b[i] - b[j]) > 0 for i, j in pairs).item() / len(pairs)
    return math.isclose(ns.same_order(a, b), expected) and ns.same_order(b, b) == 1


CHECKS = [logistic_right, hard_start_converges, weights_right, correction_undoes_the_weights, measures_right, average_precision_right, calibration_right, threshold_right, split_right, order_right]
BROKEN = [
    (logistic_right, "ridge[-1] = 0", "pass"),
    (logistic_right, "labels.double(), weights / weights.sum()", "labels.double(), weights / len(weights)"),
    (logistic_right, "(weights * (probs - labels)) + ridge * beta", "(weights * (probs - labels)) + ridge"),
    (hard_start_converges, "size /= 2", "break"),
    (weights_right, "(labels == 0).sum() / (labels == 1).sum()", "len(labels) / (labels == 1).sum()"),
    (weights_right, "torch.randint(len(spam), (len(ham),)", "torch.randint(len(spam), (len(labels),)"),
    (weights_right, "torch.randperm(len(ham), generator=generator)[len(spam) :]", "torch.randperm(len(ham), generator=generator)[: len(spam)]"),
    (weights_right, "torch.randperm(len(ham), generator=generator)[len(spam) :]", "torch.arange(len(ham))[len(spam) :]"),
    (correction_undoes_the_weights, "logits - math.log(ratio)", "logits + math.log(ratio)"),
    (correction_undoes_the_weights, "logits - math.log(ratio)", "logits - ratio"),
    (measures_right, "(recall + right / (right + false_alarm)) / 2", "(recall + right / (right + miss)) / 2"),
    (measures_right, "hit / (hit + false_alarm) if", "hit / (hit + miss) if"),
    (measures_right, "2 * hit / (2 * hit + false_alarm + miss)", "hit / (hit + false_alarm + miss)"),
    (average_precision_right, "scores[1:] != scores[:-1], torch.tensor([True])", "torch.tensor([True]), scores[1:] != scores[:-1]"),
    (average_precision_right, "scores[1:] != scores[:-1], torch.tensor([True])", "torch.ones(len(labels), dtype=torch.bool)"),
    (average_precision_right, "scores.sort(descending=True)", "scores.sort()"),
    (average_precision_right, "(precision * recall.diff(prepend=torch.zeros(1))).sum()", "precision.mean()"),
    (calibration_right, ".long().clamp(max=count - 1)", ".round().long().clamp(max=count - 1)"),
    (calibration_right, "(size * (said - true).abs()).sum().item() / len(probs)", "(said - true).abs().mean().item()"),
    (threshold_right, "false_alarm * (torch.arange(len(spam)) - spam) + miss *", "miss * (torch.arange(len(spam)) - spam) + false_alarm *"),
    (threshold_right, "torch.where(edges[1:] == edges[:-1], math.inf, total)", "total"),
    (threshold_right, "(edges[best] + edges[best + 1]) / 2", "edges[best]"),
    (split_right, "(x - x[train].mean(dim=0)) / x[train].std(dim=0)", "(x - x.mean(dim=0)) / x.std(dim=0)"),
    (order_right, "signs[0] * signs[1] > 0", "signs[0] * signs[1] >= 0"),
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
    path = tmp_path / "exp_imbalance.py"
    path.write_text(document + start + code.replace(old, new), encoding="utf-8")
    broken = load(path, "broken_imbalance")
    broken.tmp = tmp_path
    try:
        assert not check(broken)
    except (RuntimeError, IndexError, ValueError):
        pass
    finally:
        del sys.modules["broken_imbalance"]


# ---- 整个脚本 ----


def run(ns, monkeypatch, capsys, tmp_path, *arguments):
    monkeypatch.setattr(ns, "OUTPUTS", tmp_path / "outputs")
    monkeypatch.setattr(sys, "argv", ["exp_imbalance.py", *arguments])
    code = 0
    try:
        ns.main()
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def test_quick(ns, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("LLM_DATA_DIR", "")
    code, out, _ = run(ns, monkeypatch, capsys, tmp_path, "--quick")
    assert code == 0 and "不下结论" in out and "✗" not in out and "分不出" not in out and out.count("✓") == 8
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir()) == ["features", "imbalance", "imbalance_quick.png"]
    (kept,) = (tmp_path / "outputs" / "features").iterdir()
    before, rows = kept.stat().st_mtime_ns, ns.load_messages(ns.find_data("messages.tsv"))[::5]
    assert ns.prepare(rows, "mini", "") == kept and kept.stat().st_mtime_ns == before  # 第二次读存着的
    assert torch.load(kept, weights_only=True)["labels"].sum() == sum(label == "spam" for label, _ in rows)


def test_same_treatment_is_not_told_apart(ns, tmp_path, monkeypatch, capsys):
    """A/A：同一种办法换一次抽签，分不出；真的不同的（界线），分得出。"""
    x, labels, _ = toy(7, 900, 5, 0.15)
    torch.save({"features": x[:, :5].half(), "labels": labels}, tmp_path / "data.pt")
    table = ns.summarize([ns.run_seed(str(tmp_path / "data.pt"), 0, seed) for seed in range(5)])
    ns.show(table, quick=False)
    lines = [line for line in capsys.readouterr().out.splitlines() if "±" in line]
    assert sum("欠采样，另抽一次" in line for line in lines) == 2 and all("分不出" in line for line in lines if "欠采样，另抽一次" in line)
    (balanced,) = [line for line in lines if "平衡准确率" in line and "加权 − 什么也不做 " in line]
    assert "更高" in balanced


def test_undefined_and_the_lightest_penalty_are_said(ns, tmp_path, capsys):
    """有几次没有定义的，平均只算有定义的，说清几次；挑中最轻的惩罚，说出来；± 说的是什么，也说出来。"""
    x, labels, _ = toy(7, 900, 5, 0.15)
    torch.save({"features": x[:, :5].half(), "labels": labels}, tmp_path / "data.pt")
    results = [ns.run_seed(str(tmp_path / "data.pt"), 0, seed) for seed in range(5)]
    for found, times in zip(results, range(5)):
        found["惩罚"][ns.PLAIN] = ns.PENALTIES[-1] if times < 2 else ns.PENALTIES[0]
    table = ns.summarize(results)
    table[ns.PLAIN]["查准率"] = [math.nan, 0.5, 0.7, math.nan, 0.6]
    ns.show(table, quick=False)
    out = capsys.readouterr().out
    (row,) = [line for line in out.splitlines() if line.startswith(ns.PLAIN + " ") and "%" in line]
    assert "60.0%（3 次）" in row and f"{ns.PLAIN} 有 2 次挑中了最轻的惩罚" in out and "宽 2.0 倍" in out and "不是 5 份新短信" in out


@pytest.mark.parametrize("old, new", [("weights[spam] = ratio.double()", "weights[ham] = ratio.double()"), ("torch.randint(len(spam), (len(ham),)", "torch.randint(len(spam), (len(labels),)")])
def test_unequal_weights_are_seen(old, new, tmp_path, capsys):
    """权重加错了一类、抽多了，自查有一条 ✗。"""
    path = tmp_path / "exp_imbalance.py"
    path.write_text(SCRIPT.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    broken = load(path, "broken_imbalance")
    broken.check({})
    del sys.modules["broken_imbalance"]
    assert "✗ 加权、过采样、欠采样之后" in capsys.readouterr().out


@pytest.mark.parametrize("bad", ["gpt_mini.pth", "messages.tsv"])
def test_bad_files_are_one_sentence(ns, monkeypatch, capsys, tmp_path, bad):
    """坏的权重、太少的短信：一句中文，退出码 2。"""
    folder = tmp_path / "data"
    folder.mkdir()
    if bad == "gpt_mini.pth":
        torch.save({"config": {}, "model": {}}, folder / bad)
    else:
        (folder / bad).write_text("ham\thello\n" * 2000 + "spam\tprize\n" * 30, encoding="utf-8")
    monkeypatch.setenv("LLM_DATA_DIR", str(folder))
    code, out, error = run(ns, monkeypatch, capsys, tmp_path, "--quick")
    assert code == 2 and ("坏了" if bad == "gpt_mini.pth" else "spam 6 条、ham 400 条") in error.strip().splitlines()[-1] and not (tmp_path / "outputs").exists()


def test_help_needs_no_files(tmp_path):
    """搬到别处，什么数据也找不到：--help 还是帮助。"""
    copy = tmp_path / "exp_imbalance.py"
    copy.write_bytes(SCRIPT.read_bytes())
    result = subprocess.run([sys.executable, copy, "--help"], capture_output=True, encoding="utf-8", env=os.environ | {"LLM_DATA_DIR": "", "PYTHONUTF8": "1"})
    assert result.returncode == 0 and "--quick" in result.stdout, result.stderr


@pytest.mark.parametrize("arguments, word", [(["--seeds", "3"], "--seeds"), (["--seeds", "11"], "--seeds"), (["--model", "smollm2", "--seeds", "5"], "requirements-model.txt")], ids=" ".join)
def test_bad_input_is_one_sentence(ns, monkeypatch, capsys, tmp_path, arguments, word):
    monkeypatch.setattr(ns, "SMOLLM2", tmp_path / "没有.pth")
    code, _, error = run(ns, monkeypatch, capsys, tmp_path, *arguments)
    assert code == 2 and word in error.splitlines()[-1] and "Traceback" not in error and not (tmp_path / "outputs").exists()
