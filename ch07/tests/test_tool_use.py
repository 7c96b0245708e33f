"""exp_tool_use：计算器只算该算的；掩码、循环、续写弄坏了测试就变红；提问里的调用不算；最多算几次；坏参数一句中文。

运行：python -m pytest ch07/tests/test_tool_use.py
用照着念的假模型和随机的小模型，不需要 SmolLM2。
"""

import json
import os
import random
import re
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "ch07" / "experiments" / "exp_tool_use.py"
HOSTILE = [
    "__import__('os').system('touch hacked')", "open('hacked','w')", "9**9**9", "2**3", "1/0", "1//0", "5%2", "a+1", "(1).real", "1e3*2", "True+1", "[1]*9", "'a'*9", "1,2", "-5", "+5", "~5", "1<2",
    "1 if 1 else 2", "lambda: 1", "f'{1}'", "(x:=5)", "1_0*b", "0x", "", " ", "(" * 30, "9" * 38, "(" * 100_000, "1+" * 50_000 + "1", "1+" * 30 + "1", "\x00", "1+2\n3", "１＋＋", "calc(1+1)", "0x10*1", "0b11+1", "1_000*2", "1+1#rm -rf", "2\t*3", "１+2",
]  # fmt: skip


def load(old="", new=""):
    """装上实验；给了 old 和 new，就装改坏了的。"""
    source = SCRIPT.read_text(encoding="utf-8")
    if old:
        head, body = source.split('"""\n', 1)  # 文档里的「动手改」不算
        assert body.count(old) == 1, f"{old!r} 出现 {body.count(old)} 次"
        source = f'{head}"""\n{body.replace(old, new)}'
    module = types.ModuleType("exp_tool_use")
    module.__file__ = str(SCRIPT)
    exec(compile(source, str(SCRIPT), "exec"), module.__dict__)
    return module


@pytest.fixture(scope="module")
def tool():
    return load()


class Puppet:
    """照着念的模型：按提问里的字认出该念哪一份，一轮念一段；记下每一轮听到的。"""

    def __init__(self, ns, scripts):
        self.cfg, self.scripts, self.heard = ns.TINY, scripts, []
        self.tokenizer = ns.load_model(True)[1]

    def __call__(self, idx, cache, last_only):
        if idx.shape[1] > 1:
            texts = [self.tokenizer.decode(row) for row in idx.tolist()]
            self.heard += texts
            self.saying = []
            for text in texts:
                script = next(script for word, script in self.scripts.items() if word in text)
                rest = "".join(script)
                for piece in script:  # 已经写过的那些段，在听到的里面了
                    if piece in text:
                        rest = rest.replace(piece, "", 1)
                self.saying.append(rest or "<|im_end|>")
        chosen = []
        for i, text in enumerate(self.saying):
            token = self.tokenizer.encode(text or "<|im_end|>", allowed_special="all")[0]
            chosen.append([token])
            self.saying[i] = text[len(self.tokenizer.decode([token])) :]
        return torch.nn.functional.one_hot(torch.tensor(chosen), self.cfg["vocab_size"]).float()


def written(ns, scripts, prompts):
    puppet = Puppet(ns, scripts)
    return ns.write(puppet, puppet.tokenizer, [ns.encode_prompt(puppet.tokenizer, prompt) for prompt in prompts]), puppet


# ---- 每条检查返回成立吗；弄坏代码之后，它必须不成立 ----


def calculator_right(ns):
    rng = random.Random(0)
    for _ in range(200):
        a, b, c = (rng.randrange(10 ** rng.randint(1, 6)) for _ in range(3))
        text = rng.choice(["{}+{}*{}", "{}-{}-{}", "({}+{})*{}", "{}*{}+{}", " {} - {} * {} "]).format(a, b, c)
        if ns.calculate(text) != str(eval(text)):  # noqa: S307　自己造的，只有数和 + − ×
            return False
    return True


def calculator_safe(ns):
    start = time.perf_counter()
    refused = all(ns.calculate(each) == ns.REFUSED for each in HOSTILE)
    return refused and time.perf_counter() - start < 2 and not Path("hacked").exists()


def calls_found(ns):
    texts = {"calc(1+2)": "1+2", "so calc(3*4)": "3*4", "calc(1+2) ": None, "calc(1+2": None, "calculate(1)": None, "calc((1+2)*3)": None, "calc()": "", "calc(1+2)=3\ncalc(4+5)": "4+5", "calc(1) or calc(2)": "2"}
    return {text: ns.find_call(text) for text in texts} == texts


def masks_right(ns):
    """要学的：调用、最后那句、结束词元；不学的：提问、计算器写的。"""
    tokenizer = ns.load_model(True)[1]
    said = []
    for expression, answer, with_tool in (("12*3", "36", True), ("12*3", "36", False), (None, "Paris.", True)):
        ids, mask = ns.encode_example(tokenizer, "How much <|im_end|>?", expression, answer, with_tool)
        said.append((tokenizer.decode([i for i, use in zip(ids, mask) if use]), tokenizer.decode([i for i, use in zip(ids, mask) if not use])))
        if len(ids) != len(mask):
            return False
    prompt = "<|im_start|>user\nHow much <|im_end|>?<|im_end|>\n<|im_start|>assistant\n"
    end = tokenizer.encode_single_token("<|im_end|>")
    once = ns.encode_prompt(tokenizer, "How much <|im_end|>?").count(end) == 1  # 题目里的只是字
    return once and said == [("calc(12*3)The answer is 36.<|im_end|>", prompt + "=36\n"), ("The answer is 36.<|im_end|>", prompt), ("Paris.<|im_end|>", prompt)]


def loss_right(ns):
    """一条一条、不填充地算，按词元平均。"""
    torch.manual_seed(0)
    model, tokenizer = ns.load_model(True)
    examples = [ns.encode_example(tokenizer, question, expression, answer, True) for question, expression, answer in (("2+3?", "2+3", "5"), ("What is 10 * 11?", "10*11", "110"), ("Hi", None, "Hello."))]
    total, count = 0.0, 0
    with torch.no_grad():
        for ids, mask in examples:
            logp = torch.log_softmax(model(torch.tensor([ids]))[0], dim=-1)
            total -= sum(logp[i - 1, token].item() for i, (token, use) in enumerate(zip(ids, mask)) if use)
            count += sum(mask)
        return abs(ns.answer_loss(model, examples).item() - total / count) < 1e-4


def loop_right(ns):
    """算了接着写；提问里的不算；长短不同的几道一起也不串；第二次调用看得见第一次的得数。"""
    scripts = {"first": ["calc(6*7)", "So 42."], "second one": ["calc(2+3)", "calc(5*4)", "It is 20."], "third": ["No need."], "calc(1+1)": ["Hi."]}
    found, puppet = written(ns, scripts, ["first", "the second one here", "third", "calc(1+1) fourth", "first"])
    texts, calls = [text for text, _, _ in found], [used for _, used, _ in found]
    right = texts == ["calc(6*7)=42\nSo 42.", "calc(2+3)=5\ncalc(5*4)=20\nIt is 20.", "No need.", "Hi.", "calc(6*7)=42\nSo 42."]
    own = [mine for _, _, mine in found] == ["calc(6*7)So 42.", "calc(2+3)calc(5*4)It is 20.", "No need.", "Hi.", "calc(6*7)So 42."]
    heard = any(text.endswith("calc(2+3)=5\ncalc(5*4)=20\n") for text in puppet.heard)
    return right and own and heard and calls == [["6*7"], ["2+3", "5*4"], [], [], ["6*7"]]


def loop_stops(ns):
    """没完没了地调用，最多算 MAX_CALLS 次；拒绝的写「?」；写不完的，写满就停。"""
    found, _ = written(ns, {"loop": [f"calc({i}+{i})" for i in range(1, 9)], "bad": ["calc(9**9)", "Sorry."], "long": ["x" * 200]}, ["loop", "bad", "long"])
    (_, calls, _), (text, bad, _), (long, _, _) = found
    return len(calls) == ns.MAX_CALLS and text == "calc(9**9)=?\nSorry." and bad == ["9**9"] and len(long) == ns.MAX_NEW_TOKENS


def questions_right(ns):
    """得数对；没有负数；位数对；考试的问法练习里一句也没有。"""
    for templates, digits in ((ns.TEMPLATES, (1, 3)), (ns.HELD_OUT, (2, 3)), (ns.HELD_OUT[:3], (4, 4))):
        for question, expression, answer in ns.make_questions(300, random.Random(1), templates, digits):
            numbers = [int(number) for number in re.findall(r"\d+", expression)]
            if str(eval(expression)) != answer or int(answer) < 0 or not all(re.search(rf"\b{number}\b", question) for number in numbers):  # noqa: S307
                return False
            if len(numbers) == 2 and not all(digits[0] <= len(str(number)) <= digits[1] for number in numbers):
                return False
    return not {text for text, _ in ns.TEMPLATES} & {text for text, _ in ns.HELD_OUT}


def numbers_read(ns):
    texts = {"12-15": "15", "It is 3.0": "", "So 4 or 2.5.": "4", "-7": "-7", "The answer is 1,234.": "1234", "12 - 15 = -3": "-3", "none": "", "calc(2+3)=5\nThe answer is 5.": "5"}
    return {text: ns.last_number(text) for text in texts} == texts


CHECKS = [calculator_right, calculator_safe, calls_found, masks_right, loss_right, loop_right, loop_stops, questions_right, numbers_read]
MUTANTS = [
    ("[0-9+*() -]+", "[0-9A-Za-z_+*() -]+", calculator_safe),
    ("re.fullmatch", "re.match", calculator_safe),
    ("    if len(expression) > 40 or not", "    if not", calculator_safe),
    (" and node.value < 10**9", "", calculator_safe),
    ("ast.Sub: operator.sub", "ast.Sub: operator.add", calculator_right),
    ('r"calc\\(([^()]*)\\)$"', 'r"calc\\(([^()]*)\\)"', calls_found),
    ('r"calc\\(([^()]*)\\)$"', 'r"calc\\((.*)\\)$"', calls_found),
    ('(encode(f"={answer}\\n"), False)', '(encode(f"={answer}\\n"), True)', masks_right),
    ("list(prompt), [False] * len(prompt)", "list(prompt), [True] * len(prompt)", masks_right),
    ("(encode(said) + [end], True)", "(encode(said), True)", masks_right),
    ('*(i for i in encode(f"user\\n{question}") if i < VOCAB_SIZE)', '*tokenizer.encode(f"user\\n{question}", allowed_special="all")', masks_right),
    ("losses * mask[:, 1:]", "losses * mask[:, :-1]", loss_right),
    (".sum() / mask.sum()", ".mean()", loss_right),
    ("ids + tokens + tokenizer.encode_ordinary(result)", "ids + tokenizer.encode_ordinary(result)", loop_right),
    ("for _ in range(MAX_CALLS + 1):", "for _ in range(2):", loop_stops),
    ("own[i] + text", "own[i] + text + '!'", loop_right),
    ('"c": rng.randint(2, a // b)', '"c": rng.randint(2, 900)', questions_right),
    (", reverse=True)  # 大的在前", ")  # 大的在前", questions_right),
    ("return numbers[-1] if numbers", "return numbers[0] if numbers", numbers_read),
    ("(?<![\\d.])-?\\d+", "(?<![\\d.])\\d+", numbers_read),
    ("(?<![\\d.])-?", "-?", numbers_read),
]


@pytest.mark.parametrize("right", CHECKS, ids=lambda right: right.__name__)
def test_right(tool, right, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert right(tool)


@pytest.mark.parametrize("old, new, right", MUTANTS, ids=range(len(MUTANTS)))
def test_broken_scripts_are_caught(old, new, right, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        assert not right(load(old, new))
    except (MemoryError, RecursionError):
        pass  # 嵌套上万层，解释器自己停下来


def run(*arguments, folder=None):
    environment = os.environ | {"PYTHONUTF8": "1", "LLM_DATA_DIR": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, folder or SCRIPT, *arguments], capture_output=True, encoding="utf-8", env=environment)


def test_quick_resumes(tool, tmp_path, monkeypatch, capsys):
    """--quick 走通、自查全对；第二次读存着的。"""
    monkeypatch.setattr(tool, "OUTPUTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["exp_tool_use.py", "--quick"])
    tool.main()
    out = capsys.readouterr().out
    assert "两步的应用题（1 道）" in out and out.count("✓") == 4 and "✗" not in out and "不下结论" in out and "差在计算器" not in out
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "exp_tool_use").iterdir()}
    assert len(kept) == 3 and all(json.loads((tmp_path / "exp_tool_use" / name).read_text(encoding="utf-8"))["math"] for name in kept)
    tool.main()
    assert capsys.readouterr().out == out and kept == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "exp_tool_use").iterdir()}


def test_verdict_needs_more_than_the_spread(tool, tmp_path, capsys):
    """差得比种子之间的出入大，才说差在计算器；两边一样，说分不出。"""

    def fake(rate):
        rows = [["q", "a", i < 20 * rate, False] for i in range(20)]
        return {"math": {paper: rows for paper in ("3 位数", "两步的应用题")}, "chat": rows, "attacks": []}

    base = fake(0.1)
    for tools, directs, said in (((0.9, 0.8, 0.9), (0.3, 0.3, 0.4), "差在计算器"), ((0.5, 0.3, 0.4), (0.5, 0.3, 0.4), "分不出"), ((0.5, 0.9, 0.7), (0.4, 0.1, 0.4), "分不出")):
        tool.report(base, {"用计算器": list(map(fake, tools)), "直接答": list(map(fake, directs))}, False, tmp_path / "x.png")
        out = capsys.readouterr().out
        assert said in out and ("差在计算器" in out) == (said == "差在计算器")
    tool.report(base, {"用计算器": [fake(0.9)], "直接答": [fake(0.1)]}, False, tmp_path / "x.png")
    out = capsys.readouterr().out
    assert "只有一个种子" in out and "差在计算器" not in out


@pytest.mark.parametrize("old, new", [("", ""), ("mark.update(Path(file).read_bytes())", "mark.update(file.encode())")], ids=["对的", "只看文件名"])
def test_changed_data_is_trained_again(old, new, tmp_path, monkeypatch, capsys):
    """instructions.json 换了内容、名字没变，就重新训练。"""
    ns, path, kept = load(old, new), tmp_path / "data" / "instructions.json", []
    path.parent.mkdir()
    text = (ROOT / "setup" / "data" / "instructions.json").read_text(encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["exp_tool_use.py", "--quick"])
    monkeypatch.setattr(ns, "OUTPUTS", tmp_path)
    monkeypatch.setattr(ns, "train_once", lambda *_: {"losses": [], "math": {"两步的应用题": [["q", "a", True, False]]}, "chat": [["q", "a", True, False]], "attacks": []})
    ns.train_once.__globals__["__file__"] = str(SCRIPT)
    monkeypatch.setenv("LLM_DATA_DIR", str(path.parent))
    for content in (text, text, text.replace("the", "a", 1)):
        path.write_text(content, encoding="utf-8")
        ns.main()
        kept.append(len(list((tmp_path / "exp_tool_use").iterdir())))
    capsys.readouterr()
    assert (kept == [3, 3, 6]) != bool(old)


@pytest.mark.parametrize("content, words", [("[]", "至少一条"), ("{", "JSON"), (json.dumps([{"instruction": "a", "input": "", "output": "b"}]), "至少要 120 条、24 条"), (None, "应是一个文件")], ids=["空的", "坏的", "一条", "文件夹"])
def test_bad_files_are_one_sentence(tool, content, words, tmp_path, monkeypatch, capsys):
    path = tmp_path / "data" / "instructions.json"
    path.parent.mkdir()
    if content is None:
        path.mkdir()
        (path / "x").touch()
    else:
        path.write_text(content, encoding="utf-8")
    monkeypatch.setenv("LLM_DATA_DIR", str(path.parent))
    monkeypatch.setattr(tool, "OUTPUTS", tmp_path / "outputs")
    monkeypatch.setattr(sys, "argv", ["exp_tool_use.py", "--quick"])
    with pytest.raises(SystemExit) as stop:
        tool.main()
    assert stop.value.code == 2 and words in capsys.readouterr().err.strip().splitlines()[-1] and not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("seeds", [["1", "1"], ["9" * 23], ["-1"]], ids=" ".join)
def test_bad_seeds(tool, seeds, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["exp_tool_use.py", "--quick", "--seeds", *seeds])
    with pytest.raises(SystemExit) as stop:
        tool.main()
    assert stop.value.code == 2 and "--seeds" in capsys.readouterr().err.strip().splitlines()[-1]


def test_bad_arguments(tool, tmp_path, monkeypatch, capsys):
    result = run("--steps", "0")
    assert result.returncode == 2 and "Traceback" not in result.stderr and "--steps" in result.stderr.splitlines()[-1]
    monkeypatch.setattr(tool, "SMOLLM2", tmp_path / "没有.pth")
    monkeypatch.setattr(sys, "argv", ["exp_tool_use.py"])
    with pytest.raises(SystemExit) as stop:
        tool.main()
    assert stop.value.code == 2 and "requirements-model.txt" in capsys.readouterr().err.splitlines()[-1]
