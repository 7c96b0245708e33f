"""setup/check_data.py：每一种坏文件说得出是什么、在哪里，能转换的转换得了；第 6、7 章的脚本遇到同样的文件，一句话就停，不训练。

运行：python -m pytest setup/tests/test_check_data.py
需要原书数据的测试，在没有设置 LLM_DATA_DIR 时跳过。
"""

import csv
import importlib.util
import io
import json
import os
import random
import re
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "setup" / "data"
BOOK = Path(os.environ.get("LLM_DATA_DIR", "no-such-folder"))
needs_book = pytest.mark.skipif(not (BOOK / "SMSSpamCollection.tsv").is_file(), reason="没有原书的数据：请让 LLM_DATA_DIR 指向它所在的文件夹")
TINY = {"vocab_size": 50257, "context_length": 256, "emb_dim": 16, "n_heads": 2, "n_layers": 1, "drop_rate": 0.0, "qkv_bias": False}

# 100 条短信、40 条指令，取自自带的数据：下面每个坏文件，都是从它们改坏的。
LINES = [line.replace("£", "") for line in (DATA / "messages.tsv").read_text(encoding="utf-8").splitlines() if line.isascii() and '"' not in line and "," not in line and ";" not in line]
LINES = [line for pair in zip(*([line for line in LINES if line.startswith(label)][:50] for label in ("ham", "spam"))) for line in pair]
SMS = "\n".join(LINES) + "\n"
ENTRIES = [{key: entry[key] for key in ("instruction", "input", "output")} for entry in json.loads((DATA / "instructions.json").read_text(encoding="utf-8"))[:40]]
TALK = [[{"from": "human", "value": entry["instruction"]}, {"from": "gpt", "value": entry["output"]}] for entry in ENTRIES]
ROLES = [[{"role": "user", "content": entry["instruction"]}, {"role": "assistant", "content": entry["output"]}] for entry in ENTRIES]
CHINESE = "ham\t今晚一起吃饭吗\nspam\t恭喜您中奖了，请回电\n"
STORY = (DATA / "story-zh.txt").read_text(encoding="utf-8")


def replaced(number, **changes):
    """指令里的一条换成别的。"""
    return json.dumps([entry | changes if i == number else entry for i, entry in enumerate(ENTRIES, start=1)])


def as_csv(header, rows, tail=()):
    buffer = io.StringIO()
    csv.writer(buffer).writerows([header, *([*row, *tail] for row in rows)])
    return buffer.getvalue()


PAIRS = [line.split("\t", 1) for line in LINES]
# 名字 → 内容；它应当说出来的话；转换之后有几条（None：转换不了）。
BAD = {
    "gb18030.tsv": ((SMS + CHINESE).encode("gb18030"), ["多半是 GB18030", "第 101 行第 5 个字节是 0xBD"], 102),
    "utf16.tsv": (SMS.encode("utf-16"), ["多半是 UTF-16", "第 1 行第 1 个字节是 0xFF"], 100),
    "utf16be.tsv": (b"\xfe\xff" + SMS.encode("utf-16-be"), ["多半是 UTF-16", "0xFE"], 100),
    "utf16-no-bom.tsv": (SMS.encode("utf-16-le"), ["多半是 UTF-16", "第 1 行第 2 个字节是 0x00"], 100),
    "utf32.tsv": (SMS.encode("utf-32"), ["多半是 UTF-32"], 100),
    "latin1.tsv": ((SMS + "spam\tWin £1000 café, £A now\n").encode("latin-1"), ["多半是 latin-1", "第 101 行第 10 个字节是 0xA3"], 101),
    "big5.tsv": ((SMS + "ham\t今天天氣很好，我們一起去圖書館讀書\n" * 3).encode("big5"), ["多半是 Big5"], 103),
    "broken.tsv": ((SMS + CHINESE * 5).encode() + b"ham\tbad \xff byte\n", ["坏了 1 处字节", "第 111 行第 9 个字节是 0xFF"], None),
    "bom-then-bad.tsv": (b"\xef\xbb\xbf" + (SMS + "spam\tWin £1000\n").encode("latin-1"), ["第 101 行第 10 个字节是 0xA3"], 101),
    "utf16-cut.tsv": (SMS.encode("utf-16")[:-1], ["开头像 UTF-16", "后面却坏了"], None),
    "excel.tsv": (b"PK\x03\x04" + bytes(range(256)), ["压缩包或 Excel 表格"], None),
    "nul.tsv": (SMS.encode() + b"ham\ta\0b\n", ["1 个 NUL 字符", "第 101 行"], 101),
    "return-inside.tsv": ((SMS + 'ham\t"a\rb"\nspam\t"c\rd"\n').encode(), ["2 个单独的回车", "第 101 行"], 102),
    "spam.csv": (as_csv(["v1", "v2", "", "", ""], [*PAIRS, ["spam", "Win £500, now"]], ("", "", "")).encode("latin-1"), ["多半是 latin-1", "是「,」分开的表", "第一行是列名"], 101),
    "reversed.csv": (as_csv(["text", "label"], [[text, int(label == "spam")] for label, text in PAIRS]).encode(), ["第一行是列名", "第 3 行是 '1'"], 100),
    "commas.csv": ("\n".join(["v1,v2,,,", "ham,one, two, three,"] + [",".join(pair) + ",,," for pair in PAIRS]).encode(), ["切成了几栏", "第 2 行"], 101),
    "more-columns.csv": (as_csv(["id", "Category", "Message", "source"], [[i, *pair, "web"] for i, pair in enumerate(PAIRS)]).encode() + b"7,ham\n", ["第一行是列名", "没有用到的栏：id、source", "正文是空的：第 102 行"], 100),
    "semicolon.csv": ("\n".join(";".join(pair) for pair in PAIRS).encode(), ["是「;」分开的表"], 100),
    "quote-across.tsv": ("\n".join(LINES[:20] + ['ham\t"On my way'] + LINES[20:26] + ['ham\tOk, see you"'] + LINES[26:]).encode(), ["共 7 行", "第 21 行的引号吞掉了第 22–28 行"], 102),
    "quote-open.tsv": ("\n".join(LINES[:30] + ['ham\t"On my way'] + LINES[30:]).encode(), ["共 70 行", "第 31 行的引号吞掉了第 32–101 行"], 101),
    "quote-before-label.tsv": (('"' + SMS).encode(), ["吞掉了后面的行"], 100),
    "capitals.tsv": (SMS.replace("spam\t", "Spam\t").encode(), ["标签不是小写", "50 处，第 2 行是 'Spam'"], 100),
    "header.tsv": (("label\ttext\n" + SMS).encode(), ["第一行是列名"], 100),
    "tabs.tsv": ((SMS + "ham\tone\ttwo\n").encode(), ["切成了几栏", "第 101 行"], 101),
    "empty-text.tsv": ((SMS + "ham\t \n").encode(), ["正文是空的：第 101 行"], 100),
    "unknown-label.tsv": ((SMS + "eggs\tx\n").encode(), ["标签不认识", "第 101 行是 'eggs\\tx'"], 100),
    "no-tabs.tsv": (SMS.replace("\t", " ").encode(), ["标签不认识", "100 处"], None),
    "empty.tsv": (b"", ["文件是空的"], None),
    "only-ham.tsv": ("".join(f"ham\tm{i}\n" for i in range(30)).encode(), ["30 条 ham、0 条 spam"], None),
    "labels.json": (json.dumps([{"label": label, "text": text} for label, text in PAIRS]).encode(), ["是 JSON，不是「ham"], 100),
    "gbk.json": (json.dumps([*ENTRIES, {"instruction": "写诗", "input": "", "output": "床前明月光"}], ensure_ascii=False).encode("gb18030"), ["多半是 GB18030"], 41),
    "lines.jsonl": ("\n".join(map(json.dumps, ENTRIES)).encode(), ["一行一条的 JSONL"], 40),
    "broken-line.jsonl": (("\n".join(map(json.dumps, ENTRIES)) + '\n{"instruction": \n').encode(), ["这一行不是 JSON：第 41 行"], 40),
    "conversations.json": (json.dumps([{"conversations": talk} for talk in TALK]).encode(), ["是聊天记录", "40 处"], 40),
    "messages.json": (json.dumps([{"messages": [{"role": "system", "content": "Be brief."}, *talk]} for talk in ROLES]).encode(), ["是聊天记录"], 40),
    "several-turns.json": (json.dumps([{"messages": talk * 2} for talk in ROLES]).encode(), ["只取第一问第一答", "第 1 条有 2 句没取"], 40),
    "no-answer.json": (json.dumps([{"messages": talk[:1]} for talk in ROLES]).encode(), ["没有一问一答：40 处"], None),
    "other-names.json": (json.dumps([{"prompt": entry["instruction"], "response": entry["output"]} for entry in ENTRIES]).encode(), ["instruction 写成了 prompt", "output 写成了 response", "没有 input"], 40),
    "wrapped.json": (json.dumps({"version": 1, "data": ENTRIES}).encode(), ["列表包在 'data' 里面"], 40),
    "half-emoji.json": (replaced(38, input="hi \ud83d").encode(), ["半个表情符号", "第 38 条的 \\ud83d"], 40),
    "half-emoji-elsewhere.json": (replaced(38, note="hi \ud83d").encode(), ["半个表情符号", "第 38 条"], 40),
    "null-input.json": (replaced(3, input=None).encode(), ["没有 input", "第 3 条"], 40),
    "number.json": (replaced(3, output=7).encode(), ["output 不是文字", "第 3 条"], 40),
    "list.json": (replaced(3, output=["a"]).encode(), ["没有 output，或它不是文字：第 3 条"], 39),
    "missing.json": (json.dumps([*ENTRIES, {"instruction": "a", "input": ""}]).encode(), ["没有 output，或它不是文字：第 41 条"], 40),
    "empty-instruction.json": (replaced(3, instruction=" ").encode(), ["instruction 是空的：第 3 条"], 39),
    "empty-outputs.json": (json.dumps([entry | {"output": ""} for entry in ENTRIES]).encode(), ["每一条的 output 都是空的"], None),
    "end-token.json": (replaced(3, output="Yes.<|endoftext|>").encode(), ["末尾写着 <|endoftext|>", "第 3 条"], 40),
    "end-token-inside.json": (replaced(3, output="Yes.<|endoftext|>No.").encode(), ["中间有 <|endoftext|>", "第 3 条"], 39),
    "too-long.json": (replaced(3, input="word " * 300).encode(), ["回答全被截掉", "第 3 条的提示词有 3"], 39),
    "all-too-long.json": (json.dumps([entry | {"input": "word " * 300} for entry in ENTRIES]).encode(), ["回答全被截掉", "40 处"], None),
    "not-a-dict.json": (json.dumps([*ENTRIES, "a"]).encode(), ["不是字典：第 41 条"], 40),
    "cut-off.json": (json.dumps(ENTRIES, indent=1)[:-40].encode(), ["文件没有写完"], None),
    "comma.json": (json.dumps(ENTRIES, indent=1).replace('",', '"', 1).encode(), ["少了逗号", "第 4 行第 3 个字符"], None),
    "deep.json": (b"[" * 100_000, ["套得太深"], None),
    "huge-number.json": (b"[" + b"9" * 5000 + b"]", ["不是 JSON"], None),
    "few.json": (json.dumps(ENTRIES[:9]).encode(), ["只有 9 条"], None),
    "tsv.json": (SMS.encode(), ["开头不是 [ 或 {"], None),
}
GOOD = {
    "bom.tsv": (b"\xef\xbb\xbf" + SMS.replace("\n", "\r\n").encode(), 100),
    "old-mac.tsv": (SMS.replace("\n", "\r").encode(), 100),
    "blank-lines.tsv": (SMS.replace("\n", "\n\n").encode(), 100),
    "line-separator.tsv": ((SMS + "ham\ta\u2028b\x85c\n").encode(), 101),
    "bom.json": (b"\xef\xbb\xbf" + json.dumps(ENTRIES).encode(), 40),
    "whole-emoji.json": (replaced(3, input="hi \U0001f600").encode(), 40),
}


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tool():
    return load(ROOT / "setup" / "check_data.py")


@pytest.fixture
def check(tool, monkeypatch, capsys, tmp_path):
    """check(参数…) → 退出码、stdout、stderr；图写到临时文件夹。"""
    monkeypatch.setattr(tool, "OUTPUTS", tmp_path / "outputs")

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["check_data.py", *map(str, args)])
        try:
            tool.main()
            code = 0
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return call


def complaint(err):
    """stderr 的最后一行应当是一句中文，没有 traceback；返回这句话。"""
    message = err.strip().splitlines()[-1]
    assert "Traceback" not in err and re.search(r"[\u4e00-\u9fff]{2}", message) and "[Errno" not in message, err
    return message


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    return path


def new_file(folder, name):
    return folder / f"new{'.json' if name.endswith(('.json', '.jsonl')) and name != 'labels.json' else '.tsv'}"


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_explained_and_converted(name, check, chapters, tmp_path):
    """说得出是什么、在哪里；退出码 2；能转换的，转换出来的文件，它和章节脚本都认，一条不多、一条不少。"""
    content, expected, kept = BAD[name]
    path = write(tmp_path, name, content)
    code, out, err = check(path)
    assert code == 2 and complaint(err)
    for piece in expected:
        assert piece in out + err, (piece, out, err)
    new = new_file(tmp_path, name)
    code, out, err = check(path, "--convert", new)
    assert path.read_bytes() == content
    if kept is None:
        assert code == 2 and "转换" in err + out and not new.exists() or "压缩包" in err
    else:
        assert code == 0, err
        assert check(new)[0] == 0
        assert len(chapters.read(new)) == kept
    assert not list(tmp_path.glob("new.*.*"))


@pytest.mark.parametrize("name", GOOD)
def test_unusual_but_good_files(name, check, chapters, tmp_path):
    """不常见、但没有问题的文件：它说能用，章节脚本也读得进来，条数相同。"""
    content, kept = GOOD[name]
    path = write(tmp_path, name, content)
    code, out, _ = check(path)
    assert code == 0 and "能用" in out
    rows = chapters.read(path)
    assert len(rows) == kept
    if path.suffix == ".tsv":  # 写成 CSV，再读回来，还是那么多条
        loaders, _ = chapters.spam.make_loaders(path, chapters.tokenizer, 256)
        texts = [row["Text"] for loader in loaders for row in loader.dataset.data]
        shutil.rmtree(chapters.spam.OUTPUTS)
        assert sorted(texts) == sorted(text for _, text in chapters.spam.create_balanced_dataset(rows))


def test_what_conversion_writes(check, tmp_path):
    """转换出来的内容：文字一个不错，丢掉的、没有取的都说出来。"""
    cases = {name: json.loads for name in ("messages.json", "several-turns.json", "half-emoji.json", "other-names.json", "end-token.json")}
    new = {}
    for name in [*cases, "spam.csv", "quote-across.tsv", "tabs.tsv", "commas.csv", "gb18030.tsv", "latin1.tsv", "list.json"]:
        target = tmp_path / f"new-{name}"
        code, out, _ = check(write(tmp_path, name, BAD[name][0]), "--convert", target)
        assert code == 0
        new[name] = json.loads(target.read_text(encoding="utf-8")) if name.endswith("json") else list(csv.reader(open(target, encoding="utf-8", newline=""), delimiter="\t"))
        if name == "list.json":
            assert "去掉了 1 条：第 3 条" in out
    first = ENTRIES[0]
    assert new["messages.json"][0] == {"instruction": "Be brief.\n" + first["instruction"], "input": "", "output": first["output"]}
    assert new["several-turns.json"][0] == {"instruction": first["instruction"], "input": "", "output": first["output"]} == new["other-names.json"][0]
    assert new["half-emoji.json"][37]["input"] == "hi \ufffd" and new["end-token.json"][2]["output"] == "Yes."
    assert new["half-emoji.json"][:37] == ENTRIES[:37]
    assert new["spam.csv"] == [*PAIRS, ["spam", "Win £500, now"]] and new["tabs.tsv"][-1] == ["ham", "one two"]
    assert new["commas.csv"][0] == ["ham", "one, two, three"]
    assert new["quote-across.tsv"] == [*PAIRS[:20], ["ham", '"On my way'], *PAIRS[20:26], ["ham", 'Ok, see you"'], *PAIRS[26:]]
    assert new["gb18030.tsv"][-1] == ["spam", "恭喜您中奖了，请回电"] and new["latin1.tsv"][-1] == ["spam", "Win £1000 café, £A now"]


def test_text_and_preferences(check, tmp_path):
    """文章：编码、太短；偏好：HuggingFace 式的来回。"""
    code, out, err = check(write(tmp_path, "gb.txt", STORY.encode("gb18030")), "--convert", tmp_path / "new.txt")
    assert code == 0 and "多半是 GB18030" in out and (tmp_path / "new.txt").read_text(encoding="utf-8") == STORY
    assert check(tmp_path / "new.txt")[0] == 0
    code, _, err = check(write(tmp_path, "short.txt", STORY[:100].encode()))
    assert code == 2 and "太短：前 90% 只有" in complaint(err)
    pairs = [{"prompt": entry["instruction"], "chosen": talk, "rejected": [talk[0], {"role": "assistant", "content": "No."}]} for entry, talk in zip(ENTRIES, ROLES)]
    code, out, _ = check(write(tmp_path, "pairs.json", json.dumps(pairs).encode()), "--convert", tmp_path / "new.json")
    assert code == 0 and "偏好（preferences）" in out
    assert json.loads((tmp_path / "new.json").read_text(encoding="utf-8"))[0] == {"instruction": ENTRIES[0]["instruction"], "input": "", "chosen": ENTRIES[0]["output"], "rejected": "No."}


@pytest.mark.parametrize("name", ["messages.tsv", "instructions.json", "preferences.json", "story-en.txt", "story-zh.txt"])
def test_shipped_data_is_usable(name, check, tmp_path):
    code, out, _ = check(DATA / name)
    assert code == 0 and not re.search(r"^(能改|去掉|不行|提醒)", out, re.MULTILINE) and "与训练集的一字不差" not in out
    assert (tmp_path / "outputs" / f"lengths-{Path(name).stem}.png").is_file() == (not name.startswith("story"))


@needs_book
def test_book_data(check, tool):
    """原书的数据都能用；书上的那一处引号照旧，5,572 条；与训练集一字不差的测试短信是 37 条，与 6.2 节数的相同。"""
    code, out, _ = check(BOOK / "SMSSpamCollection.tsv")
    assert code == 0 and "原书的数据就是这样，照旧：第 5082 行" in out
    assert "训练 1045 条，验证 149 条，测试 300 条" in out and "测试集里，37 条与训练集的一字不差" in out
    assert "测试集里，30 条与训练集的近似" in out  # ch06/main/example_01_data.py 里写着这个数
    assert len(tool.examine((BOOK / "SMSSpamCollection.tsv").read_text(encoding="utf-8"), "messages", 256)[0]) == 5572
    for name, sizes in [("instruction-data.json", "训练 935 条，验证 55 条，测试 110 条"), ("instruction-data-with-preference.json", "训练 935 条，验证 55 条，测试 110 条")]:
        code, out, _ = check(BOOK / name)
        assert code == 0 and sizes in out


def test_same_split_as_the_chapters(tool, chapters):
    """切分与第 6、7 章的主脚本一条不差：不然说"测试集里有几条是练过的"就是假话。"""
    path = DATA / "messages.tsv"
    rows, _ = tool.examine(path.read_text(encoding="utf-8"), "messages", 256)
    loaders, _ = chapters.spam.make_loaders(path, chapters.tokenizer, 256)
    for part, loader in zip(tool.divide(rows, "messages").values(), loaders):
        assert [text for _, text, _ in part] == [row["Text"] for row in loader.dataset.data]
    shutil.rmtree(chapters.spam.OUTPUTS)
    rows, _ = tool.examine((DATA / "instructions.json").read_text(encoding="utf-8"), "instructions", 256)
    data = json.loads((DATA / "instructions.json").read_text(encoding="utf-8"))
    sizes = [len(part) for part in tool.divide(rows, "instructions").values()]
    assert [entry for part in ("训练", "测试", "验证") for _, entry, _ in tool.divide(rows, "instructions")[part]] == data and sizes == [939, 56, 110]


def test_near_pairs_misses_none(tool):
    """与两两相比的笨办法比：一对不多，一对不少。"""
    rng, texts = random.Random(0), []
    for _ in range(60):
        words = [rng.choice("alpha beta gamma delta omega kappa sigma".split()) for _ in range(rng.randint(1, 14))]
        texts += [" ".join(words), " ".join(words[:-1] + [rng.choice("pi rho tau".split())])]
    texts += ["".join(rng.choices("ab", [9, 1], k=rng.randint(1, 12))) for _ in range(80)]  # 碎片很少，刚好够得着八成的多
    texts = sorted(set(texts))

    def pieces(text):
        return {text[i : i + 5] for i in range(max(1, len(text) - 4))}

    for threshold in (0.5, 0.8, 1.0):
        slow = {(i, j) for j in range(len(texts)) for i in range(j) if len(pieces(texts[i]) & pieces(texts[j])) >= threshold * len(pieces(texts[i]) | pieces(texts[j]))}
        assert set(tool.near_pairs(texts, threshold)) == slow and slow


def test_duplicates_and_lengths(check, tmp_path, tool, monkeypatch):
    """重复、近似、标签自相矛盾、空的回答、会被截断的：能用，但都说出来。"""
    twice = SMS + "ham\tsame text for both labels\nspam\tsame text for both labels\n" + "".join(f"ham\tcall 0800 555 {i} now for a free prize draw\n" for i in range(9))
    code, out, _ = check(write(tmp_path, "twice.tsv", twice.encode()))
    assert code == 0 and "一字不差的，多出 1 条" in out and "1 条的标签自相矛盾" in out and "有近似的另一条的，9 条" in out
    repeated = json.dumps(ENTRIES + [entry | {"instruction": entry["instruction"].upper()} for entry in ENTRIES[:3]] + ENTRIES[5:7] * 2)
    code, out, _ = check(write(tmp_path, "repeated.json", repeated.encode()))
    assert code == 0 and "多出 4 条" in out and "测试集里，3 条与训练集的近似：第 41 条与第 1 条" in out and "验证集里，4 条与训练集的一字不差" in out
    code, out, _ = check(write(tmp_path, "empty-output.json", replaced(3, output="").encode()))
    assert code == 0 and "提醒　output 是空的，学到的是不回答：第 3 条" in out
    seen = []
    monkeypatch.setattr(tool, "draw", lambda series, path, context: seen.append(series))
    code, out, _ = check(write(tmp_path, "long.json", replaced(3, output="word " * 300).encode()))
    assert code == 0 and "超过上下文长度 256 的有 1 条，尾巴会被截掉：第 3 条" in out and max(seen[0]["提示词和回答"]) > 300 > max(seen[0]["提示词"])
    assert "超过上下文长度" not in check(tmp_path / "long.json", "--context", 1024)[1]
    assert check(write(tmp_path, "too-long.json", BAD["too-long.json"][0]), "--context", 1024)[0] == 0  # GPT-2 放得下


def test_bad_arguments(check, tmp_path, monkeypatch):
    good = write(tmp_path, "good.tsv", SMS.encode())
    for case in [[], [tmp_path / "absent.tsv"], [tmp_path], [good, "--context", "0"], [good, "--for", "nothing"], [good, "--convert", good], [good, "--convert", tmp_path / "no" / "x.tsv"]]:
        code, _, err = check(*case)
        assert code == 2 and complaint(err).startswith("出错了："), case
    assert check(good, "--for", "instructions")[0] == 2 and check(good)[0] == 0
    assert check("--help")[0] == 0

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        code, _, err = check(good, "--convert", tmp_path / "new.tsv")
    assert code == 2 and "读写不了" in complaint(err) and not list(tmp_path.glob("new*"))


# ---- 第 6、7 章的脚本：同样的坏文件，一句话就停，说出第一个问题和这条命令 ----


class Chapters:
    """第 6、7 章的主脚本，在临时的小项目里；mini 是极小的随机模型。"""

    def __init__(self, folder):
        import torch

        torch.set_num_threads(1)
        self.folder, self.spam, self.instruct = folder, load(folder / "ch06" / "main" / "gpt_class_finetune.py"), load(folder / "ch07" / "main" / "gpt_instruction_finetuning.py")
        self.tokenizer = self.spam.tiktoken.get_encoding("gpt2")
        weights = {"config": TINY, "model": self.spam.GPTModel(TINY).state_dict()}
        for path in (folder / "ch05" / "outputs" / "gpt_mini.pth", folder / "ch07" / "outputs" / "gpt-mini-sft.pth"):
            path.parent.mkdir(parents=True)
            torch.save(weights, path)

    def read(self, path):
        """用章节脚本的办法读一个文件。"""
        return self.instruct.download_and_load_file(path, "") if path.suffix == ".json" else self.spam.load_messages(path)


@pytest.fixture(scope="module")
def chapters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    for chapter in ("ch06", "ch07"):
        shutil.copytree(ROOT / chapter / "main", folder / chapter / "main", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "setup").symlink_to(ROOT / "setup", target_is_directory=True)
    return Chapters(folder)


@pytest.fixture
def program(chapters, monkeypatch, capsys):
    """program(文件) → 退出码、stderr：照后缀交给第 6 章或第 7 章的主脚本，--quick。"""

    def call(path):
        module = chapters.instruct if path.suffix in (".json", ".jsonl") else chapters.spam
        monkeypatch.setattr(sys, "argv", [module.__name__, "--data", str(path), "--device", "cpu", "--quick"])
        monkeypatch.setattr(module.torch.optim, "AdamW", lambda *_, **__: pytest.fail("已经要训练了"))
        with pytest.raises(SystemExit) as stopped:
            module.main()
        return stopped.value.code, capsys.readouterr().err

    return call


# NUL 字符、单独的回车，章节脚本不查，别的：check_data.py 说不能用的，章节脚本都停。
@pytest.mark.parametrize("name", [name for name in BAD if name not in ("nul.tsv", "return-inside.tsv", "labels.json")])
def test_programs_stop_before_training(name, program, chapters, tmp_path):
    before = sorted(chapters.folder.rglob("*.*"))
    path = write(tmp_path, name, BAD[name][0])
    code, err = program(path)
    message = complaint(err)
    assert code == 2 and f"python setup/check_data.py {path}" in message, err
    assert not re.search(r"codec|Expecting|Extra data|Unterminated|recursion", message), message
    assert [path for path in sorted(chapters.folder.rglob("*.*")) if path not in before and "__pycache__" not in path.parts] == []


def test_programs_say_what_is_wrong(program, tmp_path):
    """第一个问题说到第几条。"""
    for name, expected in [
        ("quote-open.tsv", "的第 31 条，引号没有配对，吞掉了后面 "), ("quote-across.tsv", "吞掉了后面 "),
        ("gb18030.tsv", "不是 UTF-8 编码的文本"), ("capitals.tsv", "第 2 条是 'Spam"), ("half-emoji.json", "第 38 条有半个表情符号"), ("half-emoji-elsewhere.json", "第 38 条有半个表情符号"),
        ("too-long.json", "第 3 条，提示词就有 3"), ("too-long.json", "--context 256"), ("empty-instruction.json", "第 3 条应有 instruction（不能是空的）"), ("comma.json", "（第 4 行第 3 个字符）"),
        ("empty-outputs.json", "没有回答可学"), ("deep.json", "不是 UTF-8 编码的 JSON"),
    ]:  # fmt: skip
        message = complaint(program(write(tmp_path, name, BAD[name][0]))[1])
        assert expected in message, message


def test_the_books_quote_is_let_through(chapters, tmp_path):
    """原书有一条吞掉了两行，章节脚本放过；吞得再多就停。"""
    row = 'ham\t"Keep ur problems in ur heart.\nham\tYeah\nham\tHi"\n'
    assert len(chapters.read(write(tmp_path, "book.tsv", (SMS + row).encode()))) == 101
    with pytest.raises(ValueError, match="第 101 条.*吞掉了后面 3 行"):
        chapters.read(write(tmp_path, "other.tsv", (SMS + row.replace("Yeah", "Yeah\nham\tOk")).encode()))


def test_it_is_in_the_readme():
    assert "check_data.py" in (ROOT / "setup" / "README.md").read_text(encoding="utf-8")
