"""第 7 章的测试：每个脚本各跑一遍，书上的数字，与独立实现的比较，自带的数据，坏数据、坏参数，Ollama。

运行：python -m pytest ch07/tests
需要原书数据的测试，在没有设置 LLM_DATA_DIR 时跳过。
脚本在临时的小项目里跑，那里的 mini 和 GPT-2 是极小的随机模型：快，也不碰读者的 ch07/outputs。
"""

import importlib.util
import inspect
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

CHAPTER = Path(__file__).resolve().parents[1]
ROOT = CHAPTER.parent
MAIN, DATA = CHAPTER / "main", ROOT / "setup" / "data"
BOOK = Path(os.environ.get("LLM_DATA_DIR", "no-such-folder")) / "instruction-data.json"
needs_book = pytest.mark.skipif(not BOOK.is_file(), reason="没有原书的 instruction-data.json：请让 LLM_DATA_DIR 指向它所在的文件夹")
CPU = torch.device("cpu")
TINY = {"vocab_size": 50257, "context_length": 128, "emb_dim": 16, "n_heads": 2, "n_layers": 1, "drop_rate": 0.1, "qkv_bias": False}
WALKTHROUGHS = [
    "example_01_dataset_and_prompt",
    "example_02_collate",
    "example_03_loaders_and_start_model",
    "example_04_finetune",
    "example_05_responses",
    "example_06_scores",
]
PROGRAMS = ["gpt_instruction_finetuning", "ollama_evaluate"]


def load(path):
    """按路径导入一个脚本。"""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(script, *args, cwd, book=False):
    """在另一个文件夹里运行脚本，就像读者在终端里那样。"""
    env = {key: value for key, value in os.environ.items() if book or key != "LLM_DATA_DIR"}
    env |= {"PYTHONUTF8": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    return subprocess.run([sys.executable, str(script), *map(str, args)], cwd=cwd, env=env, capture_output=True, encoding="utf-8", timeout=900)


def make_project(folder, mini=True):
    """造一个小项目：脚本是抄的，setup 是原来的；mini 和 GPT-2 是极小的随机模型。"""
    for kind in ("main", "experiments"):
        shutil.copytree(CHAPTER / kind, folder / "ch07" / kind, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "setup").symlink_to(ROOT / "setup", target_is_directory=True)
    outputs = folder / "ch05" / "outputs"
    outputs.mkdir(parents=True)
    if mini:
        model = load(MAIN / "gpt_instruction_finetuning.py").GPTModel
        for name, config in {"gpt_mini.pth": TINY, "gpt2-355M.pth": TINY | {"qkv_bias": True, "drop_rate": 0.0}}.items():
            torch.manual_seed(0)
            torch.save({"config": config, "model": model(config).state_dict()}, outputs / name)
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    torch.set_num_threads(1)
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def main_script(project):
    return load(project / "ch07" / "main" / "gpt_instruction_finetuning.py")


@pytest.fixture(scope="module")
def ollama(project):
    return load(project / "ch07" / "main" / "ollama_evaluate.py")


@pytest.fixture(scope="module")
def tokenizer(main_script):
    return main_script.tiktoken.get_encoding("gpt2")


@pytest.fixture(scope="module")
def reference():
    """llms_from_scratch 的第 7 章。它导入 psutil 只为了看 Ollama 开没开，这里用不到，没有装就放一个空的。"""
    sys.modules.setdefault("psutil", types.ModuleType("psutil"))
    return pytest.importorskip("llms_from_scratch.ch07", reason="没有装 llms-from-scratch")


@pytest.fixture
def command_line(monkeypatch, capsys):
    """command_line(模块, 参数…) → 退出码、stdout、stderr；没有被接住的异常会让测试失败。"""

    def call(module, *args):
        monkeypatch.delenv("LLM_DATA_DIR", raising=False)
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, args)])
        try:
            module.main()
            code = 0
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return call


def complaint(err):
    """stderr 的最后一行应当是一句中文；返回它。"""
    line = [line for line in re.split(r"[\r\n]+", err) if line.strip()][-1]
    assert "Traceback" not in err and re.search(r"[\u4e00-\u9fff]{2}", line) and "[Errno" not in line, err
    return line


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
    assert sorted(WALKTHROUGHS + PROGRAMS) == sorted(path.stem for path in MAIN.glob("*.py"))
    readme = (CHAPTER / "README.md").read_text(encoding="utf-8")
    scripts = [*MAIN.glob("*.py"), *(CHAPTER / "experiments").glob("*.py")]
    assert not [path.name for path in scripts if path.name not in readme]
    assert all(f"7.{section}" in readme for section in range(1, 10))


def test_walkthroughs(project, tmp_path):
    """从别的文件夹、没有原书的数据，依次运行六个讲解：04 存的模型给 05 用，05 存的回答给 06 用。"""
    outputs = project / "ch07" / "outputs"
    folder = project / "ch07" / "main"
    for name, missing in [("example_05_responses", "example_04_finetune.py"), ("example_06_scores", "example_05_responses.py")]:
        if not outputs.exists():
            result = run(folder / f"{name}.py", cwd=tmp_path)
            assert result.returncode == 2 and missing in complaint(result.stderr)
    for name in WALKTHROUGHS:
        result = run(folder / f"{name}.py", cwd=tmp_path)
        assert result.returncode == 0 and "✗" not in result.stdout and "✓" in result.stdout, name + result.stdout + result.stderr
    assert {"example-loss.png", "example-parts.png", "example-sft.pth", "instruction-data-with-response.json"} <= {path.name for path in outputs.iterdir()}
    answered = json.loads((outputs / "instruction-data-with-response.json").read_text(encoding="utf-8"))
    assert len(answered) == 110 and all(isinstance(entry["model_response"], str) for entry in answered)
    assert not list(tmp_path.iterdir()), "脚本不该在当前文件夹里留下文件"


@pytest.mark.parametrize("size", ["mini", "355M"])
def test_finetune_and_ask(size, project, tmp_path, main_script, command_line, monkeypatch):
    """--quick 走到底，写下三样东西；它的模型 --ask 不用，用的是真正微调过的那个。"""
    outputs = project / "ch07" / "outputs"
    result = run(project / "ch07" / "main" / "gpt_instruction_finetuning.py", "--quick", "--size", size, "--device", "cpu", cwd=tmp_path)
    assert result.returncode == 0 and ("✗" not in result.stdout or size == "355M"), result.stdout + result.stderr
    assert {"gpt-quick-sft.pth", "instruction-data-with-response-gpt-quick.json", "loss-plot-gpt-quick.png"} <= {path.name for path in outputs.iterdir()}
    saved = torch.load(outputs / "gpt-quick-sft.pth", weights_only=True)
    assert saved.keys() == {"config", "model"} and saved["config"]["drop_rate"] == 0.0
    assert not list(outputs.glob("*.part"))
    answered = json.loads((outputs / "instruction-data-with-response-gpt-quick.json").read_text(encoding="utf-8"))
    assert len(answered) == 3 and all(isinstance(entry["model_response"], str) for entry in answered)
    monkeypatch.setitem(main_script.SETTINGS, size, main_script.SETTINGS[size] | {"max_new_tokens": 3})
    code, _, err = command_line(main_script, "--size", size, "--ask", "Hi")
    assert code == 2 and "还没有" in complaint(err)
    name = main_script.NAMES[size]
    shutil.copy(outputs / "gpt-quick-sft.pth", outputs / f"{name}-sft.pth")
    code, out, err = command_line(main_script, "--size", size, "--ask", "Hi")
    (outputs / f"{name}-sft.pth").unlink()
    assert code == 0 and out.endswith("\n"), err


def test_missing_mini(tmp_path):
    """没有 mini：一句话说运行哪条命令，退出码 2，绝不自己训练一个。"""
    project = make_project(tmp_path / "project", mini=False)
    for name in ["main/example_03_loaders_and_start_model", "main/example_04_finetune", "main/gpt_instruction_finetuning", "experiments/exercise_7_4_lora"]:
        result = run(project / "ch07" / f"{name}.py", cwd=tmp_path)
        assert result.returncode == 2 and "ch05/main/gpt_train.py" in complaint(result.stderr), name + result.stderr
    assert not (project / "ch07" / "outputs").exists()


@needs_book
def test_book_numbers(project, tmp_path):
    first = run(MAIN / "example_01_dataset_and_prompt.py", cwd=tmp_path, book=True).stdout
    for piece in ["1100", "Ocassion", "The correct spelling is 'Occasion.'", "An antonym of 'complicated' is 'simple'.", "训练集 935 条，验证集 55 条，测试集 110 条"]:  # 7-01 … 7-03
        assert piece in first, piece
    assert "\n\n### Instruction:\nIdentify the correct spelling of the following word.\n\n### Input:\nOcassion\n\n### Response:\nThe correct" in first
    second = run(MAIN / "example_02_collate.py", cwd=tmp_path, book=True).stdout  # 7-04 … 7-06
    position = 0
    for piece in [
        "tensor([[    0,     1,     2,     3,     4],\n        [    5,     6, 50256, 50256, 50256],\n        [    7,     8,     9, 50256, 50256]])",
        "tensor([[    1,     2,     3,     4, 50256],\n        [    6, 50256, 50256, 50256, 50256],\n        [    8,     9, 50256, 50256, 50256]])",
        "tensor([[    1,     2,     3,     4, 50256],\n        [    6, 50256,  -100,  -100,  -100],\n        [    8,     9, 50256,  -100,  -100]])",
        "1.1269",
        "0.7936",
        "1.1269",
    ]:
        position = second.index(piece, position)
    third = run(project / "ch07" / "main" / "example_03_loaders_and_start_model.py", cwd=tmp_path, book=True).stdout  # 7-06、7-07
    assert "116 批" in third and "[61, 76, 73, 68]，最后一批长 69" in third and third.count("✓") == 6
    assert "✗" not in first + second + third


@needs_book
def test_book_last_batch(main_script, tokenizer):
    """7-07：最后一批的第一条，与书上印的逐个相同。"""
    data = main_script.download_and_load_file(BOOK, "")
    train_data = data[: int(len(data) * 0.85)]
    torch.manual_seed(123)
    collate = partial(main_script.custom_collate_fn, allowed_max_length=1024)
    loader = main_script.DataLoader(main_script.InstructionDataset(train_data, tokenizer), batch_size=8, collate_fn=collate, shuffle=True, drop_last=True)
    batches = list(loader)
    inputs, targets = batches[-1]
    assert len(batches) == 116 and inputs.shape == targets.shape == (8, 69) and batches[0][0].shape == (8, 61)
    assert inputs[0, :4].tolist() == [21106, 318, 281, 12064] and inputs[0, -11:].tolist() == [4936, 13] + [50256] * 9
    assert targets[0, :3].tolist() == [318, 281, 12064] and targets[0, -11:].tolist() == [13, 50256] + [-100] * 9


# ---- 与独立的实现比较 ----


def test_signatures_are_the_book_s(main_script, ollama, reference):
    """函数和类收的参数，名字、次序、默认值都与原书相同。"""
    drafts = load(MAIN / "example_02_collate.py")
    for module, names in [
        (main_script, ["download_and_load_file", "format_input", "InstructionDataset", "custom_collate_fn"]),
        (drafts, ["custom_collate_draft_1", "custom_collate_draft_2"]),
        (ollama, ["check_if_running", "query_model", "generate_model_scores"]),
    ]:
        for name in names:
            assert inspect.signature(getattr(module, name)) == inspect.signature(getattr(reference, name)), name


@pytest.mark.parametrize("limit", [None, 3, 10])
def test_collate_agrees_with_reference(limit, main_script, reference):
    rng = random.Random(7)
    for _ in range(50):
        batch = [[rng.choice([rng.randrange(50256), 50256]) for _ in range(rng.randrange(1, 12))] for _ in range(rng.randrange(1, 5))]
        ours = main_script.custom_collate_fn([list(item) for item in batch], allowed_max_length=limit)
        theirs = reference.custom_collate_fn([list(item) for item in batch], allowed_max_length=limit)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs))


def test_drafts_and_prompt_agree_with_reference(reference, main_script, tokenizer):
    drafts = load(MAIN / "example_02_collate.py")
    batch = [[0, 1, 2, 3, 4], [5, 6], [7, 8, 9]]
    assert torch.equal(drafts.custom_collate_draft_1(batch), reference.custom_collate_draft_1(batch))
    assert all(torch.equal(a, b) for a, b in zip(drafts.custom_collate_draft_2(batch), reference.custom_collate_draft_2(batch)))
    entries = json.loads((DATA / "instructions.json").read_text(encoding="utf-8"))[:50]
    assert [main_script.format_input(entry) for entry in entries] == [reference.format_input(entry) for entry in entries]
    ours, theirs = main_script.InstructionDataset(entries, tokenizer), reference.InstructionDataset(entries, tokenizer)
    assert [ours[i] for i in range(50)] == [theirs[i] for i in range(50)]


# ---- 自带的数据 ----


def test_generators_reproduce_the_files(tmp_path):
    instructions, preferences = load(DATA / "make_instructions.py"), load(DATA / "make_preferences.py")
    entries = json.loads((DATA / "instructions.json").read_text(encoding="utf-8"))
    assert instructions.make_instructions() == entries
    assert preferences.make_preferences(entries) == json.loads((DATA / "preferences.json").read_text(encoding="utf-8"))
    assert run(DATA / "make_instructions.py", "--out", tmp_path / "x.json", cwd=tmp_path).returncode == 0
    assert (tmp_path / "x.json").read_bytes() == (DATA / "instructions.json").read_bytes()


def test_answers_are_right():
    """不看生成器，另写一套规则核对答案：先看是不是约定的那句话，再看里面的答案对不对。"""
    entries = json.loads((DATA / "instructions.json").read_text(encoding="utf-8"))
    assert len(entries) >= 1100 and len({(entry["instruction"], entry["input"]) for entry in entries}) == len(entries)
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


# ---- 坏数据、坏权重、坏参数 ----


def test_bad_data(main_script, project, tmp_path, command_line):
    good = {"instruction": "a", "input": "", "output": "b"}
    cases = {
        "空文件": (b"", "JSON"),
        "GBK": ("指令".encode("gbk"), "UTF-8"),
        "断了": (json.dumps([good] * 30, indent=1).encode()[:-30], "JSON"),
        "不是列表": (b'{"a": 1}', "列表"),
        "空列表": (b"[]", "列表"),
        "少了键": (json.dumps([good, {"instruction": "a", "input": ""}]).encode(), "第 2 条"),
        "类型不对": (json.dumps([good | {"output": 3}]).encode(), "第 1 条"),
        "不是字典": (json.dumps([good, "a"]).encode(), "第 2 条"),
        "特殊词元": (json.dumps([good | {"output": "x<|endoftext|>"}]).encode(), "endoftext"),
        "太少": (json.dumps([good] * 5).encode(), "凑不出一批训练数据（4 条）"),
        "没有测试集": (json.dumps([good] * 9).encode(), "或没有测试集"),
    }
    before = {path.name for path in (project / "ch07").rglob("*")}
    for name, (content, expected) in cases.items():
        path = tmp_path / f"{name}.json"
        path.write_bytes(content)
        code, _, err = command_line(main_script, "--data", path, "--device", "cpu")
        assert code == 2 and expected in complaint(err), (name, err)
    assert {path.name for path in (project / "ch07").rglob("*")} - before <= {"__pycache__"}


def test_download_only_when_missing(main_script, small, tmp_path, monkeypatch):
    """文件在，就不联网；不在，就从 url 下载，下一次不再下载。"""
    asked = []

    class Response:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def read(self):
            return small.read_bytes()

    monkeypatch.setattr(main_script.urllib.request, "urlopen", lambda url, timeout: asked.append(url) or Response())
    assert len(main_script.download_and_load_file(small, "https://x")) == 60 and not asked
    for _ in range(2):
        assert len(main_script.download_and_load_file(tmp_path / "new.json", "https://x")) == 60
    assert asked == ["https://x"]


class Dangerous:
    """读它的人会建一个文件：用来看代码有没有被执行。"""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_bad_arguments_and_weights(main_script, project, small, tmp_path, command_line, monkeypatch):
    cases = [["--size", "774M"], ["--data", tmp_path / "absent.json"], ["--device", "tpu"], ["--nosuch"], ["--ask", "Hi", "--size", "124M"], ["--ask", " "]]
    for case in cases:
        code, _, err = command_line(main_script, *case)
        assert code == 2 and "Traceback" not in err, case
        if case[0] in ("--data", "--ask", "--device"):
            complaint(err)
    outputs = project / "ch07" / "outputs"
    outputs.mkdir(exist_ok=True)
    weights = outputs / "gpt2-small124M-sft.pth"
    weights.write_bytes(pickle.dumps(Dangerous(tmp_path / "executed")))
    code, _, err = command_line(main_script, "--ask", "Hi", "--size", "124M")
    assert code == 2 and f"{weights} 读不出来" in complaint(err)
    weights.unlink()
    assert not (tmp_path / "executed").exists()
    for content in (b"", b"hello\n", (project / "ch05" / "outputs" / "gpt_mini.pth").read_bytes()[:5000]):  # 空的、文本、截断的
        (tmp_path / "gpt_mini.pth").write_bytes(content)
        monkeypatch.setattr(main_script, "find_data", lambda *names: tmp_path / names[0])
        code, _, err = command_line(main_script, "--data", small, "--device", "cpu")
        assert code == 2 and f"{tmp_path / 'gpt_mini.pth'} 读不出来" in complaint(err)


def test_full_disk(main_script, project, small, command_line, monkeypatch):
    """写不下：一句中文，退出码 2；上一次的模型还在，不留下半个文件。"""
    old = project / "ch07" / "outputs" / "gpt-quick-sft.pth"
    old.parent.mkdir(exist_ok=True)
    old.write_bytes(b"old")

    def full(weights, path):
        Path(path).write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 10112 vs 10006")  # 磁盘满了，PyTorch 这样说

    monkeypatch.setattr(main_script.torch, "save", full)
    code, _, err = command_line(main_script, "--data", small, "--quick", "--device", "cpu")
    assert code == 2 and f"存不下 {old}" in complaint(err)
    assert old.read_bytes() == b"old" and not list(old.parent.glob("*.part"))
    old.unlink()


@pytest.mark.parametrize("old", [None, b"old"])
def test_first_nan_stops(old, main_script, project, small, command_line, monkeypatch):
    """学习率大得离谱：第一个坏了的损失就停下，一句话说清；没有存过的不留下模型，存过的还在。"""
    monkeypatch.setitem(main_script.SETTINGS, "mini", main_script.SETTINGS["mini"] | {"learning_rate": 1e30})
    path = project / "ch07" / "outputs" / "gpt-mini-sft.pth"
    path.parent.mkdir(exist_ok=True)
    if old:
        path.write_bytes(old)
    code, _, err = command_line(main_script, "--data", small, "--device", "cpu")
    assert code == 2 and re.search("第 1 步的损失是 (nan|inf)，训练停下：学习率", complaint(err))
    assert (path.read_bytes() if path.exists() else None) == old
    path.unlink(missing_ok=True)


def test_bad_numbers_are_named(main_script, project, small, tmp_path, command_line, monkeypatch):
    """权重里有 nan 或 inf：一句中文，说出是哪个张量；微调、--ask、练习都是。"""
    saved, name = torch.load(project / "ch05" / "outputs" / "gpt_mini.pth", weights_only=True), "trf_blocks.0.norm1.scale"
    saved["model"][name][2] = torch.nan
    tuned = project / "ch07" / "outputs" / "gpt-mini-sft.pth"
    tuned.parent.mkdir(exist_ok=True)
    for path in (tmp_path / "gpt_mini.pth", tuned):
        torch.save(saved, path)
    exercise = load(project / "ch07" / "experiments" / "exercise_7_3_alpaca_52k.py")
    for script in (main_script, exercise):
        monkeypatch.setattr(script, "find_data", lambda *names: tmp_path / names[0])
    for script, path, flags in [(main_script, tmp_path / "gpt_mini.pth", []), (main_script, tuned, ["--ask", "Hi"]), (exercise, tmp_path / "gpt_mini.pth", [])]:
        code, _, err = command_line(script, "--data", small, "--device", "cpu", *flags)
        assert code == 2 and f"{path} 里的 {name} 有 nan 或 inf" in complaint(err)
    tuned.unlink()
    (tmp_path / "gpt_mini.pth").write_bytes(b"hello")
    code, _, err = command_line(exercise, "--data", small, "--device", "cpu")
    assert code == 2 and f"{tmp_path / 'gpt_mini.pth'} 读不出来" in complaint(err)


def test_no_epochs(main_script, small, command_line, monkeypatch):
    monkeypatch.setitem(main_script.SETTINGS, "mini", main_script.SETTINGS["mini"] | {"num_epochs": 0})
    code, _, err = command_line(main_script, "--data", small, "--device", "cpu")
    assert code == 2 and "num_epochs 至少是 1，不能是 0" in complaint(err)


def test_ctrl_c(main_script, project, small, command_line, monkeypatch):
    """训练或存到一半按 Ctrl-C：没有 traceback，退出码 130，以前的模型还在，不留下半个文件。"""
    old = project / "ch07" / "outputs" / "gpt-quick-sft.pth"
    old.parent.mkdir(exist_ok=True)
    old.write_bytes(b"old")

    def stop(*given):
        if isinstance(given[-1], Path):
            given[-1].write_bytes(b"half")
        raise KeyboardInterrupt

    for owner, name in ((main_script, "calc_loss_batch"), (main_script.torch, "save")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, stop)
            code, out, err = command_line(main_script, "--data", small, "--quick", "--device", "cpu")
        assert code == 130 and "停下了" in out.splitlines()[-1] and "Traceback" not in err, name
    assert old.read_bytes() == b"old" and not list(old.parent.glob("*.part"))
    old.unlink()


# ---- Ollama ----


class FakeOllama(BaseHTTPRequestHandler):
    """照 Ollama 的协议答话：一行一个 JSON；mode 决定怎样出错。"""

    def log_message(self, *args):
        """不打印。"""

    def do_GET(self):
        """首页：在运行。"""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"Ollama is running" if self.server.mode != "别的服务" else b"hello")

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
        number = len(self.server.requests)
        answers = [mode[number - 1]] if isinstance(mode, list) else ["between 80", " and 90"] if mode == "说不清" else ["8", str(number % 10)]  # 一个列表：依次这样回答
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
    code, out, err = command_line(ollama, "--file-path", responses, "--url", url)
    assert code == 0 and "✗" not in out and "82.50（4 / 4 条打了分）" in out, out + err  # 81、82、83、84
    sent = server.requests[0]
    assert sent["model"] == "llama3" and sent["options"] == {"seed": 123, "temperature": 0, "num_ctx": 2048}
    entry = json.loads(responses.read_text(encoding="utf-8"))[0]
    assert sent["messages"][0]["content"].startswith(f"Given the input `{reference.format_input(entry)}` and correct output `a`, score the model response `b`")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_local_address_skips_the_proxy(host, project, server, responses, tmp_path, monkeypatch):
    """环境变量里设着一个没有开的代理，本机的 Ollama 照样问得到。另开进程：urllib 在导入时就可能读了环境变量。"""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    done = run(project / "ch07/main/ollama_evaluate.py", "--file-path", responses, "--url", f"http://{host}:{server.server_port}/api/chat", cwd=tmp_path)
    assert done.returncode == 0 and "82.50（4 / 4 条打了分）" in done.stdout, done.stderr


# 裁判真会这样写：只有一个数可能是分数
TAKEN = {"85": 85, " 0 \n": 0, "100": 100, "85.": 85, "92.5": 92.5, "85%": 85, "８５": 85, "**85**": 85, "`85`": 85, "__85__": 85, "[[85]]": 85, "- 85": 85}
TAKEN |= {"85/100": 85, "**85** / 100": 85, "100/100": 100, "0/100": 0, "85.0/100.0": 85, "85 out of 100.": 85, "I'd give it a 75 out of 100 because it is vague.": 75}
TAKEN |= {"Score: 85": 85, "**Score:** 85/100": 85, "Score (0-100): 85": 85, "### Score\n\n85": 85, '{"score": 85}': 85, "85 points": 85, "85 (good)": 85, "85 – mostly correct": 85}
TAKEN |= {"得分：85 分": 85, "85分": 85, "评分：85": 85, "85 分（满分 100 分）": 85, "我给这个回答 85 分。": 85}
TAKEN |= {"I would rate this response 85.": 85, "I would give this response a score of 100.": 100, "On a scale from 0 to 100, I would score it 85.": 85, "Score: 85. I score it 85.": 85}
TAKEN |= {"<think>maybe 70, or 80</think>85": 85, "<think>\n70?\n</think>\n\n**85**": 85, "70 or 80?</think>85": 85}  # 有的模板把 <think> 写在提示词里
TAKEN |= {"85\n\nThe response lists 3 animals.": 85, "Score: 85\nIt has 2 typos.": 85}
# 可能是分数的不止一个，或一个也没有
UNCLEAR = ["", "good", "between 80 and 90", "Score: between 80 and 90", "80-90", "80–90", "80 to 100", "80 到 90 分", "Score: 85 or 90", "Score: 85\nScore: 90", "85\n90"]
UNCLEAR += ["I would give 85 out of 90", "85/90", "8/10", "Score: 4.5 out of 5", "85/1000", "/100", "Score: __/100", "0 to 100", "between 0 and 100"]
UNCLEAR += ["-5", "−5", "Score: -5", "负5分", "101", "150/100", "Score: 1000", "1,000", "85,5", "Score: .85", "Score: at least 80", "I give it less than 50.", "<50"]
UNCLEAR += ["<think>85", "<think>I would score it 85", "<think>85</think>", "<think>85</think>Good answer.", "Accuracy score: 40\nStyle score: 50", "Given 2 errors, I score it 85."]
UNCLEAR += ["The accurate answer is 4, so the response is wrong.", "It lists 3 animals.", "3 errors were found.", "1. The response is correct.", "部分正确，答案是 4"]


def test_parse_score(ollama):
    wrong = {reply: ollama.parse_score(reply) for reply, score in TAKEN.items() if ollama.parse_score(reply) != score}
    wrong |= {reply: ollama.parse_score(reply) for reply in UNCLEAR if ollama.parse_score(reply) is not None}
    assert not wrong
    long = "The response . . 3 - " * 5000  # 很长的评语：不能卡住
    began = time.monotonic()
    assert ollama.parse_score(long) is None and ollama.parse_score("." * 20000) is None and time.monotonic() - began < 1


@pytest.mark.parametrize(("replies", "scored", "mean", "mark"), [
    (["<think>70?</think>\n85/100", "**85**", "92.5", "得分：85 分"], "4 / 4", "86.88", "✓"),
    (["85", "between 80 and 90", "I would give 85 out of 90", "-5"], "1 / 4", "85.00", "✗"),
    (["good", "150", "80-90", ""], "0 / 4", "—", "✗"),
])  # fmt: skip
def test_judge_s_replies(replies, scored, mean, mark, ollama, server, responses, command_line):
    """取得出的算进平均分，取不出的逐条列出；只打了几条，就没有 ✓。"""
    server.mode = replies
    code, out, _ = command_line(ollama, "--file-path", responses, "--url", f"http://127.0.0.1:{server.server_port}/api/chat")
    assert code == 0 and f"平均分　{mean}（{scored} 条打了分）" in out, out
    listed = [(number, reply) for number, reply in enumerate(replies, start=1) if ollama.parse_score(reply) is None]
    assert out.count("不计入") == len(listed) and all(f"第 {number} 条看不出是几分，不计入：…{reply!r}" in out for number, reply in listed), out
    assert ("✓" in out, "✗" in out) == (mark == "✓", mark == "✗") and f"{mark} {scored} 条打了分" in out, out


ERRORS = [("没有这个模型", "ollama pull"), ("500", "500"), ("不回话", "把话说完"), ("网页", "把话说完"), ("中途出错", "把话说完"), ("别的服务", "没有 Ollama")]


@pytest.mark.parametrize(("mode", "expected"), ERRORS)
def test_ollama_errors(mode, expected, ollama, server, responses, command_line, monkeypatch):
    server.mode = mode
    opened = ollama.OPENER.open
    monkeypatch.setattr(ollama.OPENER, "open", lambda request, timeout: opened(request, timeout=0.5))
    code, _, err = command_line(ollama, "--file-path", responses, "--url", f"http://127.0.0.1:{server.server_port}/api/chat")
    assert code == 2 and expected in complaint(err), err


def test_ollama_other(ollama, server, responses, command_line, tmp_path):
    url = f"http://127.0.0.1:{server.server_port}/api/chat"
    server.mode = "说不清"
    code, out, _ = command_line(ollama, "--file-path", responses, "--url", url, "--model", "phi3")
    assert code == 0 and "0 / 4 条" in out and "✓" not in out and server.requests[0]["model"] == "phi3"
    cases = [["--url", "http://127.0.0.1:9/api/chat"], ["--url", "ftp://x"], ["--file-path", tmp_path / "absent.json"], ["--file-path", DATA / "instructions.json"]]
    for case in cases:
        given = [*(["--file-path", responses] if "--file-path" not in case else []), *(["--url", url] if "--url" not in case else []), *case]
        code, _, err = command_line(ollama, *given)
        assert code == 2, case
        complaint(err)
