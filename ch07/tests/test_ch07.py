"""第 7 章的测试：书上的数字、与独立实现的比较、自带的数据、弄断训练再接着训练、坏数据、Ollama。

运行：python -m pytest ch07/tests
需要原书数据的测试，在没有设置 LLM_DATA_DIR 时跳过。
"""

import importlib.util
import json
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import threading
import time
import types
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

CHAPTER = Path(__file__).resolve().parents[1]
MAIN, DATA = CHAPTER / "main", CHAPTER.parent / "setup" / "data"
BOOK = Path(os.environ.get("LLM_DATA_DIR", "no-such-folder")) / "instruction-data.json"
needs_book = pytest.mark.skipif(not BOOK.is_file(), reason="没有原书的 instruction-data.json：请让 LLM_DATA_DIR 指向它所在的文件夹")
CPU = torch.device("cpu")
TINY = {"vocab_size": 50257, "context_length": 64, "emb_dim": 16, "n_heads": 2, "n_layers": 1, "drop_rate": 0.0, "qkv_bias": False}
SCRIPTS = {
    "example_01_dataset_and_prompt": [],
    "example_02_collate": [],
    "example_03_loaders_and_start_model": [],
    "example_04_responses_and_scores": [],
    "gpt_instruction_finetuning": ["--quick"],
    "ollama_evaluate": ["--help"],
}


def load(path):
    """按路径导入一个脚本。"""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(script, *args, cwd, book=False):
    """在另一个文件夹里运行脚本，就像读者在终端里那样。"""
    env = {key: value for key, value in os.environ.items() if book or key != "LLM_DATA_DIR"} | {"PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, str(script), *map(str, args)], cwd=cwd, env=env, capture_output=True, encoding="utf-8", timeout=900)


@pytest.fixture(scope="module")
def main_script():
    torch.set_num_threads(1)
    return load(MAIN / "gpt_instruction_finetuning.py")


@pytest.fixture(scope="module")
def ollama():
    return load(MAIN / "ollama_evaluate.py")


@pytest.fixture(scope="module")
def tokenizer(main_script):
    return main_script.load_gpt2_tokenizer()


@pytest.fixture(scope="module")
def reference():
    """llms_from_scratch 的第 7 章。它导入 psutil 只为了看 Ollama 开没开，这里用不到，没有装就放一个空的。"""
    sys.modules.setdefault("psutil", types.ModuleType("psutil"))
    return pytest.importorskip("llms_from_scratch.ch07", reason="没有装 llms-from-scratch")


@pytest.fixture
def command_line(monkeypatch, capsys):
    """command_line(模块, 参数…) → 退出码、stdout、stderr；没有被接住的异常会让测试失败。"""

    def call(module, *args):
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, args)])
        try:
            module.main()
            code = 0
        except SystemExit as error:
            code = error.code
        out, err = capsys.readouterr()
        return code, out, err

    return call


def complaint(err):
    """stderr 的最后一行应当是一句中文；返回它。"""
    assert "Traceback" not in err, err
    line = [line for line in re.split(r"[\r\n]+", err) if line.strip()][-1]
    assert "出错了：" in line and re.search(r"[\u4e00-\u9fff]{2}", line), err
    return line


@pytest.fixture(scope="module")
def start(main_script, tmp_path_factory):
    """一个极小的起点：gpt_train.py 那样的检查点。"""
    path = tmp_path_factory.mktemp("start") / "tiny.pth"
    torch.manual_seed(1)
    model = main_script.GPTModel(TINY)
    torch.save({"config": TINY, "model": model.state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """一份小数据：60 条。"""
    path = tmp_path_factory.mktemp("data") / "small.json"
    words = ["cat", "dog", "sun", "hat", "cup", "map"]
    entries = [{"instruction": f"Copy the word number {i}.", "input": words[i % 6] if i % 2 else "", "output": words[i % 6]} for i in range(60)]
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


# ---- 每个脚本 ----


def test_every_script_is_tested():
    assert sorted(SCRIPTS) == sorted(path.stem for path in MAIN.glob("*.py"))
    readme = (CHAPTER / "README.md").read_text(encoding="utf-8")
    scripts = [*MAIN.glob("*.py"), *(CHAPTER / "experiments").glob("*.py")]
    assert not [path.name for path in scripts if path.name not in readme]
    assert all(f"7.{section}" in readme for section in range(1, 10))


@pytest.fixture
def copied(request, main_script, tmp_path_factory):
    """把脚本和数据拷到别处，放一个随机权重的 mini：不必等第 5 章训练它，也不会动到读者的 outputs/。"""
    root = tmp_path_factory.mktemp("copied")
    shutil.copytree(MAIN, root / "ch07" / "main", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(DATA, root / "setup" / "data", ignore=shutil.ignore_patterns("__pycache__"))
    small = {"emb_dim": 48, "n_layers": 1, "n_heads": 4}  # 讲解脚本不挑大小，小的快；总结脚本要真正的 mini
    shape = main_script.SIZES["mini"] if request.node.callspec.params["name"].startswith("gpt_") else small
    config = main_script.BASE_CONFIG | shape | {"context_length": 256, "qkv_bias": False}
    (root / "ch05" / "outputs").mkdir(parents=True)
    torch.save({"config": config, "model": main_script.GPTModel(config).state_dict()}, root / "ch05" / "outputs" / "gpt_mini.pth")
    return root / "ch07" / "main"


@pytest.mark.parametrize("name", SCRIPTS)
def test_script(name, copied, tmp_path):
    """从别的文件夹运行，没有原书的数据。"""
    args = [*SCRIPTS[name], *(["--out", tmp_path] if name.startswith("gpt_") else [])]
    result = run(copied / f"{name}.py", *args, cwd=tmp_path)
    assert result.returncode == 0 and "✗" not in result.stdout and "Traceback" not in result.stderr, result.stdout + result.stderr
    if name.startswith("gpt_"):
        assert {path.suffix for path in tmp_path.iterdir()} == {".png", ".pth", ".json"}
        answered = json.loads(next(tmp_path.glob("instruction-data-with-response-*.json")).read_text(encoding="utf-8"))
        assert len(answered) == 4 and all(isinstance(entry["model_response"], str) for entry in answered)


@needs_book
def test_book_numbers(tmp_path):
    first = run(MAIN / "example_01_dataset_and_prompt.py", cwd=tmp_path, book=True).stdout
    for piece in ["1100", "Ocassion", "The correct spelling is 'Occasion.'", "An antonym of 'complicated' is 'simple'.", ": 935", ": 55", ": 110"]:  # 7-01 … 7-03
        assert piece in first, piece
    assert "\n\n### Instruction:\nIdentify the correct spelling of the following word.\n\n### Input:\nOcassion\n\n### Response:\nThe correct" in first
    second = run(MAIN / "example_02_collate.py", cwd=tmp_path, book=True).stdout  # 7-04 … 7-06
    position = 0
    for piece in [
        "tensor([[    0,     1,     2,     3,     4],\n        [    5,     6, 50256, 50256, 50256],\n        [    7,     8,     9, 50256, 50256]])",
        "tensor([[    1,     2,     3,     4, 50256],\n        [    6, 50256, 50256, 50256, 50256],\n        [    8,     9, 50256, 50256, 50256]])",
        "tensor([[    1,     2,     3,     4, 50256],\n        [    6, 50256,  -100,  -100,  -100],\n        [    8,     9, 50256,  -100,  -100]])",
        "1.12692",
        "0.79359",
        "1.12692",
    ]:
        position = second.index(piece, position)
    assert "✗" not in first + second


@needs_book
def test_book_last_batch(main_script, tokenizer):
    """7-07：最后一批的第一条，与书上印的逐个相同。"""
    data = main_script.download_and_load_file(BOOK, "")
    train_data, _, _ = main_script.split_data(data)
    torch.manual_seed(123)
    collate = partial(main_script.custom_collate_fn, allowed_max_length=1024)
    loader = main_script.DataLoader(main_script.InstructionDataset(train_data, tokenizer), batch_size=8, collate_fn=collate, shuffle=True, drop_last=True)
    batches = list(loader)
    inputs, targets = batches[-1]
    assert len(batches) == 116 and inputs.shape == targets.shape == (8, 69) and batches[0][0].shape == (8, 61)
    assert inputs[0, :4].tolist() == [21106, 318, 281, 12064] and inputs[0, -11:].tolist() == [4936, 13] + [50256] * 9
    assert targets[0, :3].tolist() == [318, 281, 12064] and targets[0, -11:].tolist() == [13, 50256] + [-100] * 9


# ---- 与独立的实现比较 ----


@pytest.mark.parametrize("limit", [None, 3, 10])
def test_collate_agrees_with_reference(limit, main_script, reference):
    rng = random.Random(7)
    for _ in range(50):
        batch = [[rng.choice([rng.randrange(50256), 50256]) for _ in range(rng.randrange(1, 12))] for _ in range(rng.randrange(1, 5))]
        ours = main_script.custom_collate_fn([list(item) for item in batch], allowed_max_length=limit)
        theirs = reference.custom_collate_fn([list(item) for item in batch], allowed_max_length=limit)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs))


def test_drafts_and_prompt_agree_with_reference(reference, main_script, tokenizer, capsys):
    drafts = load(MAIN / "example_02_collate.py")
    batch = [[0, 1, 2, 3, 4], [5, 6], [7, 8, 9]]
    assert torch.equal(drafts.custom_collate_draft_1(batch), reference.custom_collate_draft_1(batch))
    assert all(torch.equal(a, b) for a, b in zip(drafts.custom_collate_draft_2(batch), reference.custom_collate_draft_2(batch)))
    entries = json.loads((DATA / "instructions.json").read_text(encoding="utf-8"))[:50]
    assert [main_script.format_input(entry) for entry in entries] == [reference.format_input(entry) for entry in entries]
    ours, theirs = main_script.InstructionDataset(entries, tokenizer), reference.InstructionDataset(entries, tokenizer)
    assert [ours[i] for i in range(50)] == [theirs[i] for i in range(50)]


def test_loss_skips_ignored_positions(main_script, tokenizer):
    """只算要算的位置，与把全部 logits 交给 cross_entropy 得到同样的损失和梯度。"""
    torch.manual_seed(0)
    model = main_script.GPTModel(TINY)
    entries = json.loads((DATA / "instructions.json").read_text(encoding="utf-8"))[:6]
    batch = [item[:60] for item in main_script.InstructionDataset(entries, tokenizer)]
    for collate in (main_script.custom_collate_fn, main_script.masked_collate_fn):
        inputs, targets = collate(batch)
        model.zero_grad()
        main_script.calc_loss_batch(inputs, targets, model, CPU).backward()
        grads = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        loss.backward()
        assert all(torch.allclose(a, p.grad, atol=1e-6) for a, p in zip(grads, model.parameters()))
        assert main_script.calc_loss_batch(inputs, targets, model, CPU).item() == pytest.approx(loss.item(), abs=1e-5)  # float32 在 10.9 附近，相邻两个数就差 1e-6


def test_mask_keeps_the_response_only(main_script, tokenizer):
    entries = json.loads((DATA / "instructions.json").read_text(encoding="utf-8"))[:20]
    dataset = main_script.InstructionDataset(entries, tokenizer)
    inputs, targets = main_script.masked_collate_fn([dataset[i] for i in range(20)])
    plain, _ = main_script.custom_collate_fn([dataset[i] for i in range(20)])
    assert torch.equal(inputs, plain)
    for entry, target in zip(entries, targets):
        assert tokenizer.decode(target[target != -100].tolist()) == f"{entry['output']}<|endoftext|>"


# ---- 自带的数据 ----


def test_generators_reproduce_the_files(tmp_path):
    instructions, preferences = load(DATA / "make_instructions.py"), load(DATA / "make_preferences.py")
    entries = json.loads((DATA / "instructions.json").read_text(encoding="utf-8"))
    assert instructions.make_instructions() == entries
    assert preferences.make_preferences(entries) == json.loads((DATA / "preferences.json").read_text(encoding="utf-8"))
    assert run(DATA / "make_instructions.py", "--out", tmp_path / "x.json", cwd=tmp_path).returncode == 0
    assert (tmp_path / "x.json").read_bytes() == (DATA / "instructions.json").read_bytes()


def test_answers_are_right(main_script):
    """不看生成器，另写一套规则核对答案：先看是不是约定的那句话，再看里面的答案对不对。"""
    entries = json.loads((DATA / "instructions.json").read_text(encoding="utf-8"))
    assert len(entries) >= 1100 and len({(entry["instruction"], entry["input"]) for entry in entries}) == len(entries)
    train_data, val_data, test_data = main_script.split_data(entries)
    assert len(train_data) + len(val_data) + len(test_data) == len(entries) and len(test_data) > 100
    opposites = {frozenset(pair.split("-")) for pair in "big-small hot-cold fast-slow old-young".split()}
    irregular = {"go": "went", "eat": "ate", "take": "took", "write": "wrote", "run": "ran", "stop": "stopped", "mouse": "mice"}
    groups = {"animal": "cat fox mouse", "vehicle": "car bus", "garment": "hat dress", "food": "egg"}
    group_of = {word: group for group, words in groups.items() for word in words.split()}
    adjectives = {word for pair in opposites for word in pair}
    days = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
    numbers = "zero one two three four five six seven eight nine ten eleven twelve".split()

    def a(word):
        return ("an " if word[0] in "aeiou" else "a ") + word

    right = {
        "plural": lambda x: f"The plural of {x} is {irregular.get(x, x + ('es' if x[-1] in 'sx' else 's'))}.",
        "past": lambda x: f"The past tense of {x} is {irregular.get(x, x + 'ed')}.",
        "comparative": lambda x: f"The comparative of {x} is {(x + x[-1] if x in ('big', 'hot') else x).removesuffix('e')}er.",
        "ing": lambda x: f"The -ing form of {x} is {(x + x[-1] if x in ('run', 'stop') else x.removesuffix('e'))}ing.",
        "category": lambda x: f"The group of {x} is {group_of[x]}.",
        "spell": lambda x: f"The word {x} is spelled {'-'.join(x)}.",
        "length": lambda x: f"The word {x} has {len(x)} letters.",
        "letter": lambda x: f"The word {x} starts with {x[0]}.",
        "kind": lambda x: f"The word {x} is {'a noun' if x in group_of else 'an adjective' if x in adjectives else 'a verb'}.",
        "repeat": lambda x: f"Two times: {x} {x}",
        "digits": lambda x: f"The number {x} is {numbers.index(x)}.",
        "next": lambda x: f"The number after {x} is {int(x) + 1}.",
        "tomorrow": lambda x: f"The day after {x} is {days[(days.index(x) + 1) % 7]}.",
    }
    for entry in entries:
        rule, item, output, question = entry["rule"], entry["item"], entry["output"], entry["instruction"] + " " + entry["input"]
        words = item.split(", ")
        if rule in right:
            assert output == right[rule](item) and item in question, entry
        elif rule == "opposite":
            found = re.fullmatch(r"The opposite of (\w+) is (\w+)\.", output)
            assert found[1] == item and frozenset(found.groups()) in opposites, entry
        elif rule == "larger":
            assert output == f"{max(map(int, words))} is larger than {min(map(int, words))}.", entry
        elif rule == "sort":
            assert output == f"In alphabetical order: {', '.join(sorted(words))}.", entry
        elif rule == "pick":
            which, listed = item.split(" of ")
            assert which in question and listed in question and output == f"The {which} word is {listed.split(', ')[0 if which == 'first' else -1]}.", entry
        else:
            noun, group = words
            sentence = f"Yes, {a(noun)} is {a(group)}." if group_of[noun] == group else f"No, {a(noun)} is not {a(group)}."
            assert rule == "yesno" and output == sentence, entry
    for pair in json.loads((DATA / "preferences.json").read_text(encoding="utf-8")):
        assert pair["chosen"] != pair["rejected"] and pair["output"] in pair["chosen"]


def test_score(main_script):
    train = [{"rule": "plural", "item": "cat", "output": "cats"}]
    test = [{"rule": "plural", "item": "cat", "output": "cats", "model_response": "cats"}, {"rule": "plural", "item": "cat", "output": "cats", "model_response": " Cats."}, {"rule": "plural", "item": "dog", "output": "dogs", "model_response": "cats"}]
    assert main_script.score_responses(test, train) == (1, 2, {("plural", True): [2, 2], ("plural", False): [0, 1]})


# ---- 训练、中断、续训 ----


def test_kill_and_resume_is_bitwise(start, small, tmp_path):
    """训练途中 kill −9 三次，再续训到底，权重与没断过的逐位相同。"""
    command = [sys.executable, str(MAIN / "gpt_instruction_finetuning.py"), "--from-file", str(start), "--data", str(small), "--epochs", "5", "--device", "cpu", "--save-every", "0"]
    env = {key: value for key, value in os.environ.items() if key != "LLM_DATA_DIR"} | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    subprocess.run([*command, "--out", str(tmp_path / "whole")], env=env, check=True, capture_output=True, timeout=600)
    broken, rng = tmp_path / "broken", random.Random(3)
    checkpoint = broken / "gpt-mini-sft-checkpoint.pth"
    for trial in range(3):
        process = subprocess.Popen([*command, "--out", str(broken), *(["--resume"] if checkpoint.is_file() else [])], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        before = checkpoint.stat().st_mtime_ns if checkpoint.is_file() else 0
        while process.poll() is None and (not checkpoint.is_file() or checkpoint.stat().st_mtime_ns == before):
            time.sleep(0.002)
        time.sleep(rng.random() * 0.1)
        process.kill()
        process.communicate()
    subprocess.run([*command, "--out", str(broken), "--resume"], env=env, check=True, capture_output=True, timeout=600)
    whole, resumed = [torch.load(folder / "gpt-mini-sft.pth", weights_only=True) for folder in (tmp_path / "whole", broken)]
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_gpt2_file_goes_through(main_script, small, tmp_path, command_line, monkeypatch):
    """真正的 GPT-2 权重走的那条路：用同样格式、极小的随机文件走一遍，设置用书上的。"""
    settings = {"n_vocab": 50257, "n_ctx": 64, "n_embd": 768, "n_head": 12, "n_layer": 1}
    monkeypatch.setitem(main_script.GPT2_SETTINGS, "124M", settings)
    monkeypatch.setitem(main_script.SIZES, "124M", {"emb_dim": 768, "n_layers": 1, "n_heads": 12})
    torch.manual_seed(0)
    path = tmp_path / "gpt2-124M.safetensors"
    save_file({name: torch.randn(shape) * 0.02 for name, shape in main_script.gpt2_shapes(settings).items()}, path)
    monkeypatch.setitem(main_script.FINETUNE_SETTINGS["default"], "max_new_tokens", 2)
    few = tmp_path / "few.json"
    few.write_text(json.dumps(json.loads(small.read_text(encoding="utf-8"))[:24]), encoding="utf-8")
    code, out, err = command_line(main_script, "--size", "124M", "--from-file", path, "--data", few, "--quick", "--device", "cpu", "--out", tmp_path / "out")
    assert code == 0 and "✗" not in out, out + err
    assert "学习率 5e-05" in out and "提示词和回答都算损失，与原书相同" in out


# ---- 坏数据、坏权重、坏参数 ----


def test_bad_data(main_script, start, tmp_path, command_line):
    good = {"instruction": "a", "input": "", "output": "b"}
    cases = {
        "空文件": (b"", "空的"),
        "GBK": ("指令".encode("gbk"), "UTF-8"),
        "二进制": (b"a\0b", "二进制"),
        "断了": (json.dumps([good] * 30, indent=1).encode()[:-30], "行"),
        "不是列表": (b'{"a": 1}', "列表"),
        "空列表": (b"[]", "列表"),
        "少了键": (json.dumps([good, {"instruction": "a", "input": ""}]).encode(), "第 2 条少了 output"),
        "类型不对": (json.dumps([good | {"output": 3}]).encode(), "第 1 条的 output 不是文字"),
        "不是字典": (json.dumps([good, "a"]).encode(), "第 2 条"),
        "空指令": (json.dumps([good | {"instruction": " "}]).encode(), "空的"),
        "特殊词元": (json.dumps([good | {"output": "x<|endoftext|>"}]).encode(), "endoftext"),
        "太少": (json.dumps([good] * 5).encode(), "太少"),
    }
    for name, (content, expected) in cases.items():
        path = tmp_path / f"{name}.json"
        path.write_bytes(content)
        out_folder = tmp_path / "out"
        code, _, err = command_line(main_script, "--from-file", start, "--data", path, "--out", out_folder, "--device", "cpu")
        assert code == 2 and expected in complaint(err), (name, err)
        assert not out_folder.exists()


class Dangerous:
    """读它的人会建一个文件：用来看代码有没有被执行。"""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_bad_weights_and_arguments(main_script, start, small, tmp_path, command_line):
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps(Dangerous(tmp_path / "executed")))
    (tmp_path / "half.pth").write_bytes(start.read_bytes()[:5000])
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "foreign.pth")
    common = ["--data", small, "--out", tmp_path / "out", "--device", "cpu"]
    cases = [["--from-file", tmp_path / f"{name}.pth"] for name in ("pickle", "half", "foreign", "absent")]
    cases += [["--from-file", start, "--size", "124M"], ["--from-file", start, "--epochs", 0], ["--from-file", start, "--resume"], ["--from-file", start, "--seed", -1]]
    cases += [["--from-file", start, "--nosuch"], ["--from-file", start, "--ask", " "], ["--from-file", start, "--ask", "word " * 80], ["--from-file", start, "--device", "tpu"]]
    for case in cases:
        code, _, err = command_line(main_script, *(common if "--device" not in case else common[:-2]), *case)
        assert code == 2, case
        complaint(err)
    assert not (tmp_path / "executed").exists()
    (tmp_path / "file").write_text("我是一个文件", encoding="utf-8")
    code, _, err = command_line(main_script, "--from-file", start, "--data", small, "--device", "cpu", "--out", tmp_path / "file")
    assert code == 2 and "建不了文件夹" in complaint(err)


def test_memory_is_checked_first(main_script, monkeypatch, command_line, small, tmp_path):
    monkeypatch.setattr(main_script, "total_memory", lambda: 2.0)
    (tmp_path / "gpt2-355M.safetensors").write_bytes(b"x")
    code, _, err = command_line(main_script, "--size", "355M", "--from-file", tmp_path / "gpt2-355M.safetensors", "--data", small, "--device", "cpu", "--out", tmp_path / "out")
    assert code == 2 and "GB 内存" in complaint(err) and "mini" in err


# ---- Ollama ----


class FakeOllama(BaseHTTPRequestHandler):
    """照 Ollama 的协议答话：一行一个 JSON；mode 决定怎样出错。"""

    def log_message(self, *args):
        """不打印。"""

    def do_GET(self):
        """/api/tags：在运行。"""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"models": []}')

    def do_POST(self):
        """/api/chat：一个词元一行。"""
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request)
        mode = self.server.mode
        if mode == "没有这个模型":
            self.send_response(404)
            self.end_headers()
            self.wfile.write(b'{"error": "model \'x\' not found"}')
            return
        if mode == "500":
            self.send_response(500)
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        if mode == "不回话":
            time.sleep(2)
            return
        answers = {"不是整数": ["Score: ", "85"], "网页": None}.get(mode, ["8", str(len(self.server.requests) % 10)])
        if mode == "网页":
            self.wfile.write(b"<html>hello</html>\n")
            return
        for piece in answers:
            self.wfile.write(json.dumps({"message": {"role": "assistant", "content": piece}, "done": False}).encode() + b"\n")
            self.wfile.flush()
            if mode == "慢":
                time.sleep(0.2)
        if mode == "中途出错":
            self.wfile.write(b'{"error": "out of memory"}\n')
        elif mode != "没说完":
            self.wfile.write(b'{"message": {"role": "assistant", "content": ""}, "done": true}\n')


@pytest.fixture
def server():
    httpd = HTTPServer(("127.0.0.1", 0), FakeOllama)
    httpd.requests, httpd.mode = [], "好"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def responses(tmp_path):
    path = tmp_path / "responses.json"
    path.write_text(json.dumps([{"instruction": f"q{i}", "input": "", "output": "a", "model_response": "b"} for i in range(4)]), encoding="utf-8")
    return path


@pytest.mark.parametrize("mode", ["好", "慢"])
def test_ollama_scores(mode, ollama, server, responses, command_line, reference):
    server.mode = mode
    url = f"http://127.0.0.1:{server.server_port}/api/chat"
    code, out, err = command_line(ollama, "--file-path", responses, "--url", url, "--timeout", 10)
    assert code == 0 and "✗" not in out and "Number of scores: 4 of 4" in out and "Average score: 82.50" in out, out + err  # 81、82、83、84
    sent = server.requests[0]
    assert sent["model"] == "llama3" and sent["options"] == {"seed": 123, "temperature": 0, "num_ctx": 2048}
    entry = json.loads(responses.read_text(encoding="utf-8"))[0]
    assert sent["messages"][0]["content"].startswith(f"Given the input `{reference.format_input(entry)}` and correct output `a`, score the model response `b`")


@pytest.mark.parametrize(("mode", "expected"), [("没有这个模型", "ollama pull"), ("500", "500"), ("不回话", "没有回音"), ("网页", "不是 Ollama 的格式"), ("中途出错", "out of memory"), ("没说完", "断了")])
def test_ollama_errors(mode, expected, ollama, server, responses, command_line):
    server.mode = mode
    code, _, err = command_line(ollama, "--file-path", responses, "--url", f"http://127.0.0.1:{server.server_port}/api/chat", "--timeout", 0.5)
    assert code == 2 and expected in complaint(err), err


def test_ollama_other(ollama, server, responses, command_line, tmp_path):
    url = f"http://127.0.0.1:{server.server_port}/api/chat"
    server.mode = "不是整数"
    code, out, _ = command_line(ollama, "--file-path", responses, "--url", url)
    assert code == 0 and "Number of scores: 0 of 4" in out and "✗" not in out
    server.mode = "好"
    code, out, _ = command_line(ollama, "--file-path", responses, "--url", url, "--quick")
    assert code == 0 and "Number of scores: 3 of 3" in out
    cases = [["--url", "http://127.0.0.1:9/api/chat"], ["--url", "ftp://x"], ["--timeout", 0], ["--file-path", tmp_path / "absent.json"], ["--file-path", DATA / "instructions.json"]]
    for case in cases:
        given = [*(["--file-path", responses] if "--file-path" not in case else []), *(["--url", url] if "--url" not in case else []), *case]
        code, _, err = command_line(ollama, *given)
        assert code == 2, case
        complaint(err)
