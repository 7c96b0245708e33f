"""第 2 章实验的测试：与别人的实现逐个比较，读脚本打印的数字，用错时的报错。

运行：python -m pytest ch02/tests/test_experiments_02.py
"""

import functools
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).resolve().parent.parent / "experiments"
DATA = FOLDER.parents[1] / "setup" / "data"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("exp_*.py"))
ZH, EN = ((DATA / name).read_text(encoding="utf-8") for name in ("story-zh.txt", "story-en.txt"))
END = "<|endoftext|>"


@functools.cache
def load(name):
    """按路径导入一个实验。"""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def command_line(monkeypatch, capsys, tmp_path):
    """command_line(实验, 参数…) → 退出码、stdout、stderr；在本进程里跑，图片写到临时文件夹。"""

    def call(name, *args):
        monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
        monkeypatch.setattr(load(name), "OUTPUTS", tmp_path / "outputs")
        code, threads = 0, torch.get_num_threads()
        with warnings.catch_warnings(record=True) as caught:  # 真的运行时，警告也会印到 stderr 上
            warnings.simplefilter("always")
            try:
                load(name).main()
            except SystemExit as error:
                code = error.code
            finally:
                torch.set_num_threads(threads)
        out, err = capsys.readouterr()
        return code, out, err + "".join(f"{warning.message}\n" for warning in caught)

    return call


# ---- 每个实验都要满足的 ----


def test_every_experiment_is_listed():
    readme = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    assert all(f"`experiments/{name}.py`" in readme for name in SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_docstring_has_four_parts(name):
    doc = (FOLDER / f"{name}.py").read_text(encoding="utf-8").split('"""')[1]
    assert re.findall(r"^(问题|先猜|看点|动手改)：", doc, re.MULTILINE) == ["问题", "先猜", "看点", "动手改"]
    assert re.search(r"约 \d+ 秒，\d+\.\d GB", doc)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_is_chinese(command_line, name):
    code, out, err = command_line(name, "--help")
    assert (code, err) == (0, "") and "实验　" in out


@pytest.mark.parametrize("name", SCRIPTS)
def test_unknown_option(command_line, name):
    code, out, err = command_line(name, "--no-such")
    assert (code, out) == (2, "") and "Traceback" not in err and "--no-such" in err.splitlines()[-1]


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name not in ("exp_bpe_from_scratch", "exp_positional_encoding")])
def test_runs_to_the_end(command_line, monkeypatch, tmp_path, name):
    """不带数据，能快则快地跑完：退出码 0，自查全过，没有警告，画出了一张图。"""
    monkeypatch.delenv("LLM_DATA_DIR", raising=False)
    quick = ["--quick"] if "--quick" in (FOLDER / f"{name}.py").read_text(encoding="utf-8") else []
    code, out, err = command_line(name, *quick)
    assert (code, err) == (0, "") and "✗" not in out and out.count("✓") >= 2 and "所以：" in out
    pictures = list((tmp_path / "outputs").iterdir())
    assert [path.suffix for path in pictures] == [".png"] and pictures[0].stat().st_size > 20_000


# ---- exp_bpe_from_scratch、exp_bpe_fast ----


@pytest.fixture(scope="module")
def bpe():
    return load("exp_bpe_from_scratch")


@pytest.fixture(scope="module")
def fast():
    return load("exp_bpe_fast")


@pytest.fixture(scope="module")
def gpt2(fast):
    tokenizer = fast.BPETokenizerFast()
    tokenizer.load_vocab_and_merges_from_openai(*fast.find_gpt2_files())
    return tokenizer


@pytest.fixture(scope="module")
def official(bpe):
    return bpe.tiktoken.get_encoding("gpt2")


def hugging_face(documents, vocab_size):
    """Hugging Face 的训练：返回合并，写成 (编号, 编号)。"""
    peer = pytest.importorskip("tokenizers", reason="没有装 tokenizers，无法与它比较")
    model = peer.Tokenizer(peer.models.BPE())
    model.pre_tokenizer = peer.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = peer.pre_tokenizers.ByteLevel.alphabet()
    model.train_from_iterator(documents, peer.trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, initial_alphabet=alphabet))
    saved = json.loads(model.to_str())["model"]
    return [(saved["vocab"][left], saved["vocab"][right]) for left, right in saved["merges"]]


@pytest.mark.parametrize(("text", "expected"), [
    ("Hello,", [15496, 11]),
    ("Implementations", [3546, 26908, 602]),
    ("asdf asdfasdf a!!, @aba 9asdf90asdfk", [292, 7568, 355, 7568, 292, 7568, 257, 3228, 11, 2488, 15498, 860, 292, 7568, 3829, 292, 7568, 74]),
    ("Hello, world. Is this-- a test?", [15496, 11, 995, 13, 1148, 428, 438, 257, 1332, 30]),
    ("This is some text", [1212, 318, 617, 2420]),
    ("\n", [198]),
    ("   Hello", [220, 220, 18435]),
])
def test_bonus_cases(gpt2, text, expected):
    """原书附带材料自己的测试用例。"""
    assert gpt2.encode(text) == expected and gpt2.decode(expected) == text


def test_fuzz_against_tiktoken(gpt2, official):
    """随机拼出的文字：各种空白、缩写、数字、汉字、表情、控制字符、组合字符，编号与 tiktoken 逐个相同。"""
    generator = random.Random(123)
    parts = [" ", "  ", "\n", "\t", "\r\n", "\u3000", "\xa0", "\x85", "\x1c", "\x1f", "\u2028", "'s", "'S", "'ll", "'", "a", "Zz", "the", "hello", "_", "__", "0", "12345",
             "²", "½", "Ⅳ", "٣", "中", "文字", "。", "，", "é", "e\u0301", "ß", "İ", "👍🏽", "🇨🇳", "\u200d", "\ufeff", "\x00", "-", "...", "!?", "<|", "|>", "endoftext", "ﬁ", "𝔸", "가", "ก็"]
    for _ in range(4000):
        text = "".join(generator.choices(parts, k=generator.randint(1, 12)))
        assert gpt2.encode(text) == official.encode_ordinary(text), repr(text)
        assert gpt2.decode(gpt2.encode(text)) == text


def test_every_character_against_tiktoken(gpt2, official):
    """每个字符都放在字母、数字、标点、空白旁边试一遍：基本平面全部，其余的隔 5 个取一个。"""
    for start in [*range(0, 0xD800, 0x400), *range(0xE000, 0x10000, 0x400), *range(0x10000, 0x32000, 0x400), 0xE0000]:
        step = 1 if start < 0x10000 else 5
        text = "".join(f"a{char}1{char}{char}! {char}  {char}\n" for char in map(chr, range(start, start + 0x400, step)))
        assert gpt2.encode(text) == official.encode_ordinary(text), hex(start)
    gpt2._cache.cache_clear()


def test_simple_equals_tiktoken(bpe, gpt2, official):
    """朴素的写法，装上 GPT-2 的合并，两篇故事的编号也与 tiktoken 逐个相同。"""
    simple = bpe.BPETokenizerSimple(gpt2.bpe_merges, [END])
    for text in (ZH, EN, "I'm we'll  2019 2791\n\n  x"):
        assert simple.encode(text) == official.encode_ordinary(text) and simple.decode(simple.encode(text)) == text
    with pytest.raises(ValueError, match="不在词表里"):
        simple.decode([50257])


def test_special_tokens(gpt2, official):
    text = f"{END}你好 {END}{END} end<|endoftext"
    assert gpt2.encode(text, allowed_special={END}) == official.encode(text, allowed_special={END})
    assert gpt2.encode(text) == official.encode(text, disallowed_special=())
    with pytest.raises(ValueError, match="不允许的特殊词元"):
        gpt2.encode(text, allowed_special={"<|other|>"})
    with pytest.raises(ValueError, match="不在词表里"):
        gpt2.decode([50257])


def test_whole_piece_shortcut(fast, gpt2):
    """整个片段恰好是一个词元时直接返回：与一步步合并的结果相同，50256 个词元都试。"""
    whole, gpt2._whole = gpt2._whole, {}
    try:
        # 词元不一定是完整的字，所以绕过 UTF-8，直接给编号。
        pieces = {chars: ids for chars, ids in whole.items()}
        to_chars, fast.to_chars = fast.to_chars, lambda chars: chars
        assert all(gpt2.tokenize_with_bpe(chars) == ids for chars, ids in pieces.items()) and len(pieces) == 50256
    finally:
        gpt2._whole, fast.to_chars = whole, to_chars


@pytest.mark.parametrize(("text", "vocab_size"), [(ZH, 1500), (EN, 1500), (ZH + EN, 3000)])
def test_merges_equal_hugging_face(bpe, fast, text, vocab_size):
    expected = hugging_face([text], vocab_size)
    for tokenizer in (bpe.BPETokenizerSimple(), fast.BPETokenizerFast()):
        tokenizer.train(text, vocab_size, allowed_special=())
        assert list(tokenizer.bpe_merges) == expected
        assert len(tokenizer.vocab) == vocab_size == len(set(tokenizer.vocab.values()))


def test_merges_equal_on_repeats(bpe, fast):
    """最容易错的是 "aaaa" 这样的重叠：随机的小文本上，朴素版、只改受影响的、字符串的（有堆、没有堆）、Hugging Face 五者相同。"""
    generator = random.Random(5)
    for alphabet in ["a", "ab", "abc 的", "xyz\n "]:
        for _ in range(15):
            text = "".join(generator.choices(alphabet, k=generator.randint(5, 300)))
            pieces = bpe.count_pieces(text)
            assert pieces == fast.count_pieces(text) and list(pieces) == list(fast.count_pieces(text))
            sequences = [(bpe.to_ids(piece), times) for piece, times in pieces.items()]
            naive = bpe.learn_merges_naive(sequences, 40)
            assert bpe.learn_merges(sequences, 40) == naive == hugging_face([text], 256 + 40), repr(text)
            assert fast.learn_merges_fast(pieces, 40) == fast.learn_merges_fast(pieces, 40, heap=False) == naive, repr(text)


def test_own_vocabulary_in_other_libraries(bpe, fast, tmp_path):
    """存出的词表，tokenizers 和 tiktoken 读了，编号都相同；自己读回来也相同。"""
    tokenizer = fast.BPETokenizerFast()
    tokenizer.train(EN + ZH, 2000)
    files = tmp_path / "vocab.json", tmp_path / "merges.txt"
    tokenizer.save_vocab_and_merges(*files)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merges.txt", "vocab.json"]
    text = "  Mrs. Standish tasted\n\n罗素琴说：“要哪里？” 1234 🍵"
    again = fast.BPETokenizerFast()
    again.load_vocab_and_merges(*files)
    assert again.encode(f"{text}{END}", {END}) == [*tokenizer.encode(text), 1999] and again.bpe_merges == tokenizer.bpe_merges
    assert tokenizer.encode(text) == bpe.BPETokenizerSimple(tokenizer.bpe_merges).encode(text)
    peer = pytest.importorskip("tokenizers", reason="没有装 tokenizers，无法与它比较")
    model = peer.Tokenizer(peer.models.BPE.from_file(*map(str, files)))
    model.pre_tokenizer = peer.pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert model.encode(text).ids == tokenizer.encode(text)
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    ranks = data_gym_to_mergeable_bpe_ranks(vocab_bpe_file=str(files[1]), encoder_json_file=str(files[0]))
    assert {token: i for i, token in enumerate(tokenizer._bytes[:-1])} == ranks


def test_training_skips_special_tokens(bpe, fast):
    for tokenizer in (bpe.BPETokenizerSimple(), fast.BPETokenizerFast()):
        tokenizer.train(f"abab{END}abab{END}", 260)
        assert not any("<" in token or "|" in token for token in list(tokenizer.vocab.values())[256:-1])
        assert tokenizer.vocab[len(tokenizer.vocab) - 1] == END


def test_book_simple_example(bpe):
    """词表大小说到做到：1000 = 256 个字节 + 743 次合并 + 1 个特殊词元；凑不够时停下。"""
    tokenizer = bpe.BPETokenizerSimple()
    tokenizer.train(EN, 1000)
    assert (len(tokenizer.vocab), len(tokenizer.bpe_merges)) == (1000, 743)
    tokenizer.train("aa", 1000)
    assert (len(tokenizer.vocab), len(tokenizer.bpe_merges)) == (258, 1)
    with pytest.raises(ValueError, match="至少是 257"):
        tokenizer.train(EN, 256)


@pytest.mark.parametrize("spoil", ["cut", "swap", "number", "text", "list"])
def test_spoiled_vocabulary(fast, tmp_path, spoil):
    """坏了的词表说得出坏了，原来的分词器还能用。"""
    tokenizer = fast.BPETokenizerFast()
    tokenizer.train(EN, 400)
    files = tmp_path / "vocab.json", tmp_path / "merges.txt"
    tokenizer.save_vocab_and_merges(*files)
    vocab, merges = (path.read_text(encoding="utf-8") for path in files)
    if spoil == "cut":
        files[0].write_text(vocab[:-20], encoding="utf-8")
    elif spoil == "swap":
        lines = merges.split("\n")
        files[1].write_text("\n".join([lines[0], lines[2], lines[1], *lines[3:]]), encoding="utf-8")
    elif spoil == "number":
        files[0].write_text(vocab.replace(": 300", ": 99999"), encoding="utf-8")
    elif spoil == "text":
        files[1].write_text("这不是合并", encoding="utf-8")
    else:
        files[0].write_text("[1, 2]", encoding="utf-8")
    before = tokenizer.encode("tea")
    with pytest.raises(ValueError, match="对不上"):
        tokenizer.load_vocab_and_merges(*files)
    assert tokenizer.encode("tea") == before


def test_bpe_as_a_reader(tmp_path):
    """从别的文件夹运行：退出码 0，自查全过，没有警告（图里缺字也会警告）。"""
    env = {key: value for key, value in os.environ.items() if key != "LLM_DATA_DIR"} | {"PYTHONUTF8": "1"}
    command = [sys.executable, str(FOLDER / "exp_bpe_from_scratch.py"), "--quick"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, encoding="utf-8", timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert "✗" not in done.stdout and done.stdout.count("✓") == 3 and list(tmp_path.iterdir()) == []


def test_bpe_output(command_line, monkeypatch, tmp_path, bpe):
    monkeypatch.delenv("LLM_DATA_DIR", raising=False)
    code, out, _ = command_line("exp_bpe_from_scratch", "--quick", "--vocab-size", 400)
    assert code == 0 and "✗" not in out and (tmp_path / "outputs" / "bpe_from_scratch.png").stat().st_size > 20_000
    # 第一个完整的汉字是第几次合并学到的：用 Hugging Face 的合并再数一遍。
    vocab = [bytes([byte]) for byte in bpe.BYTE_OF_ID]
    for left, right in hugging_face([ZH[: len(ZH) * 4 // 5]], 399):
        vocab.append(vocab[left] + vocab[right])
    first = next(i for i, token in enumerate(vocab[256:], 1) if re.fullmatch("[一-鿿]", token.decode("utf-8", "replace")))
    assert f"第 {first} 次合并，才得到第一个完整的汉字：{vocab[255 + first].decode()}" in out


@pytest.mark.parametrize("peer", [True, False])
def test_bench(command_line, monkeypatch, fast, peer):
    """速度表：缩小了跑一遍；没有装 tokenizers 时说一句话，照样打印。"""
    monkeypatch.setattr(fast, "BENCH_SIZE", 40_000)
    monkeypatch.setattr(fast, "BENCH_VOCABS", (300, 400))
    if not peer:
        monkeypatch.setitem(sys.modules, "tokenizers", None)  # 再导入它，就是 ImportError
    else:
        pytest.importorskip("tokenizers", reason="没有装 tokenizers，无法与它比较")
    code, out, _ = command_line("exp_bpe_fast", "--bench")
    assert code == 0 and "✗" not in out
    assert out.count("合并相同 44/44") == out.count("合并相同 144/144") == (1 if peer else 0)
    assert ("没有装 Hugging Face 的 tokenizers" in out) is not peer


@pytest.mark.parametrize(("args", "says"), [
    (["--vocab-size", "256"], "257 到 50000"),
    (["--vocab-size", "many"], "invalid int value"),
    (["--text", "没有这个文件.txt"], "读不了"),
    (["--text", FOLDER], "读不了"),
])
@pytest.mark.parametrize("name", ["exp_bpe_from_scratch", "exp_tokenizers_compare"])
def test_bad_text_and_vocabulary(command_line, name, args, says):
    code, out, err = command_line(name, *args)
    assert (code, out) == (2, "") and "Traceback" not in err and says in err.splitlines()[-1]


@pytest.mark.parametrize("name", ["exp_bpe_from_scratch", "exp_tokenizers_compare"])
def test_text_that_is_not_utf8(command_line, tmp_path, name):
    path = tmp_path / "gbk.txt"
    path.write_bytes("中文".encode("gbk"))
    code, out, err = command_line(name, "--text", path)
    assert (code, out) == (2, "") and "Traceback" not in err and "UTF-8" in err.splitlines()[-1]


@pytest.mark.parametrize("text", ["a", "字", "\n \n", "中" * 50, "no spaces"])
def test_tiny_texts(command_line, tmp_path, text):
    """再小的文本也跑得完，没有 ✗。"""
    path = tmp_path / "tiny.txt"
    path.write_text(text + "x", encoding="utf-8")
    code, out, err = command_line("exp_bpe_from_scratch", "--quick", "--text", path)
    assert code == 0 and "✗" not in out and err == ""


# ---- exp_tokenizers_compare ----


def test_compare_counts(command_line, monkeypatch, official):
    """打印的词元数，与另外编码一遍的相同。"""
    monkeypatch.delenv("LLM_DATA_DIR", raising=False)
    _, out, _ = command_line("exp_tokenizers_compare")
    en, zh = (len(official.encode(load("exp_tokenizers_compare").SENTENCES[key])) for key in ("英文", "中文"))
    assert f"GPT-2　英文 {en} 个，中文 {zh} 个" in out
    held_out = ZH[len(ZH) * 4 // 5 :]
    assert f"中文 {len(official.encode(held_out)) / len(held_out):.2f}（" in out.split("GPT-2　", 1)[1].split("\n")[0]


# ---- exp_embedding_vs_linear ----


def test_lookup_equals_matmul():
    module = load("exp_embedding_vs_linear")
    embedding, linear = module.make_pair(4, 5)
    ids = torch.tensor([2, 3, 1])
    expected = torch.tensor([[0.6957, -1.8061, -1.1589, 0.3255, -0.6315], [-2.8400, -0.7849, -1.4096, -0.4076, 0.7953], [1.3010, 1.2753, -0.2010, -0.1606, -0.4015]])
    for way, layer in ((module.lookup, embedding), (module.multiply, linear)):
        assert torch.allclose(way(layer, ids), expected, atol=1e-4)


@pytest.mark.parametrize("v", [50, 700])
def test_peak_is_two_copies_of_the_one_hot(v):
    """量得的内存：one-hot 先是 int64 的 8nV，转成 float32 又是 4nV，同时活着；查表只有输出。两边都另有 8n 字节的编号。"""
    module = load("exp_embedding_vs_linear")
    embedding, linear = module.make_pair(v, 6)
    ids = torch.randint(0, v, (40,))
    assert module.peak_bytes(module.lookup, embedding, ids) == 40 * 6 * 4 + 40 * 8
    most = module.peak_bytes(module.multiply, linear, ids)
    assert 0 <= most - 12 * 40 * v - 40 * 8 <= 40 * 6 * 4 + 256  # 另有输出和几个小张量


@pytest.mark.parametrize(("name", "args", "says"), [
    ("exp_embedding_vs_linear", ["--dim", "0"], "1 到 1024"),
    ("exp_dataloader_intuition", ["--max-length", "1"], "2 到 12"),
    ("exp_dataloader_intuition", ["--stride", "0"], "1 到 100"),
    ("exp_sequence_length", ["--heads", "3"], "整除"),
    ("exp_sequence_length", ["--heads", "0"], "至少是 1"),
    ("exp_embedding_map", ["--dim", "1"], "2 到 256"),
    ("exp_embedding_map", ["--seed", "-1"], "--seed"),
    ("exp_positional_encoding", ["--distance", "0"], "1 到 16"),
    ("exp_positional_encoding", ["--steps", "0"], "--steps"),
    ("exp_positional_encoding", ["--seeds", "3"], "5 到 10"),
    ("exp_memmap_dataloader", ["--text", "没有这个文件.txt"], "读不了"),
])
def test_bad_numbers(command_line, name, args, says):
    code, out, err = command_line(name, *args)
    assert (code, out) == (2, "") and "Traceback" not in err and says in err.splitlines()[-1]


# ---- exp_dataloader_intuition ----


class Numbers:
    """把数字读成编号的"分词器"，喂给原书的数据集。"""

    def encode(self, text, allowed_special=None):
        return [int(number) for number in text.split()]


@pytest.mark.parametrize(("t", "stride"), [(4, 1), (4, 4), (4, 6), (5, 3)])
def test_windows_equal_the_reference(t, stride):
    reference = pytest.importorskip("llms_from_scratch.ch02", reason="没有装 llms-from-scratch，无法与它比较").GPTDatasetV1
    module, text = load("exp_dataloader_intuition"), " ".join(map(str, range(1001)))
    ours, theirs = module.GPTDatasetV1(text, t, stride), reference(text, Numbers(), t, stride)
    assert len(ours) == len(theirs)
    assert all(torch.equal(a, b) for i in range(len(ours)) for a, b in zip(ours[i], theirs[i]))
    targets = [i for _, target in theirs for i in target.tolist()]
    assert module.times_as_target(ours) == [targets.count(i) for i in range(1001)]


# ---- exp_sequence_length ----


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_saved_bytes(heads):
    """与另一种数法（把留住的张量的内存去重相加）相同；词元总数不变，样本加长一倍，多出来的正好是每层一份 (b, h, t, t)。"""
    module = load("exp_sequence_length")
    cfg = {"vocab_size": 512, "context_length": 40, "emb_dim": 32, "n_heads": heads, "n_layers": 3, "drop_rate": 0.0, "qkv_bias": False}
    model, ids = module.GPTModel(cfg), torch.randint(0, 512, (81,))
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    counted = {}
    for t in (20, 40):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor, kept=kept: kept.append(tensor) or tensor, lambda tensor: tensor):
            module.train_step(model, module.cut(ids, t))
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
        counted[t] = sum(size for pointer, size in storages.items() if pointer not in own)
        assert module.saved_bytes(model, module.cut(ids, t)) == counted[t]
    assert counted[40] - counted[20] == pytest.approx(3 * heads * 80 * 20 * 4, abs=2000)


# ---- exp_embedding_map ----


def test_pca_and_neighbours():
    module = load("exp_embedding_map")
    vectors = torch.randn(30, 7, generator=torch.Generator().manual_seed(1)) * torch.arange(1.0, 8)
    points, kept = module.pca(vectors)
    values = np.linalg.eigvalsh(np.cov(vectors.numpy().T))[::-1]  # 协方差矩阵的特征值，就是各个方向的方差
    assert kept == pytest.approx(values[:2].sum() / values.sum(), rel=1e-4)
    assert points.var(dim=0).tolist() == pytest.approx(values[:2].tolist(), rel=1e-4)
    share, nearest = module.neighbours(torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [0.1, 3.0]]), ["a", "a", "b", "c"])
    assert nearest == [1, 0, 3, 2] and share == 0.5


def test_labels_do_not_overlap():
    """挤成几堆的点，文字也不互相遮住，不碰任何一个点。"""
    generator = torch.Generator().manual_seed(3)
    points = (torch.randn(6, 1, 2, generator=generator) * 120 + torch.randn(6, 6, 2, generator=generator) * 9).flatten(0, 1)
    places, box = load("exp_embedding_map").spread_labels(points), torch.tensor([25, 13])
    between = ((places[:, None] - places).abs() < box).all(dim=-1)
    assert between.sum() == len(points) and not ((places[:, None] - points).abs() < box / 2).all(dim=-1).any()


def test_clusters_appear(command_line):
    """看点：训练前接近瞎蒙，训练后绝大多数最近邻是同类。"""
    _, out, _ = command_line("exp_embedding_map")
    before, after, chance = map(int, re.search(r"训练前 (\d+)%，训练后 (\d+)%；瞎蒙是 (\d+)%", out).groups())
    assert before < 40 and after >= 90 and chance == round(100 * 5 / 35)


# ---- exp_positional_encoding ----


def test_encodings_equal_the_papers():
    """正弦按论文的公式一个个算；RoPE 按论文的另一种写法，当作复数相乘。"""
    import math

    module = load("exp_positional_encoding")
    table = module.sinusoidal_table(50, 64)
    for pos, i in ((0, 0), (1, 0), (7, 3), (49, 31)):
        angle = pos / 10_000 ** (2 * i / 64)
        assert table[pos, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-4) and table[pos, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-4)
    x = torch.randn(2, 50, 64)
    turns = torch.polar(torch.ones(50, 32), torch.arange(50.0)[:, None] * 10_000 ** (-torch.arange(32) / 32))
    assert torch.allclose(module.encode_rope(x), torch.view_as_real(torch.view_as_complex(x.reshape(2, 50, 32, 2)) * turns).flatten(2), atol=1e-4)


@pytest.mark.parametrize("kind", ["learned", "sinusoidal", "rope", "alibi", "none"])
def test_model_is_causal(kind):
    module = load("exp_positional_encoding")
    model, idx = module.Copier(kind), torch.randint(0, 16, (1, 20))
    changed = idx.clone()
    changed[0, 12:] = (changed[0, 12:] + 1) % 16
    assert torch.allclose(model(idx)[0][:, :12], model(changed)[0][:, :12], atol=1e-5)


def test_window_and_interpolation():
    """只许看最近 32 个的 RoPE，把整段话往后挪，输出不变；位置插值 s 倍，第 s·m 个位置转的角度与原来第 m 个相同。"""
    module = load("exp_positional_encoding")
    model, idx = module.Copier("rope"), torch.randint(0, 16, (1, 90))
    with torch.no_grad():
        long, weights = model(idx, window=32)
        short, _ = model(idx[:, 10:], window=32)
    assert torch.allclose(long[:, 50:], short[:, 40:], atol=1e-4)
    assert (weights[0] > 0).sum(dim=-1).max() == 32
    x = torch.randn(1, 1, 64).expand(1, 40, 64)
    assert torch.allclose(module.encode_rope(x, 4.0)[:, ::4], module.encode_rope(x)[:, :10], atol=1e-5)
    alibi = module.Copier("alibi")
    plain = module.Copier("none")
    plain.load_state_dict(alibi.state_dict())
    gap = plain.scores(torch.ones(1, 6, 64)) - alibi.scores(torch.ones(1, 6, 64))
    assert gap[0, 5].tolist() == pytest.approx([2.5, 2.0, 1.5, 1.0, 0.5, 0.0], abs=1e-5)


def test_extrapolation(command_line, tmp_path):
    """可学习的一出训练长度就不会了，RoPE 在 2 倍处还会，不用位置的从来不会；--quick 不下结论。"""
    module, threads = load("exp_positional_encoding"), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        runs = {kind: module.train_once(kind, 3, 200, 4, 7)["right"] for kind in ("learned", "rope", "none")}
    finally:
        torch.set_num_threads(threads)
    inside, twice = ({kind: module.span_mean(right, module.SPANS[span]) for kind, right in runs.items()} for span in ("训练过的", "2 倍"))
    assert inside["learned"] > 0.95 and twice["learned"] < 0.2
    assert min(inside["rope"], twice["rope"]) > 0.8 and max(inside["none"], twice["none"]) < 0.4
    code, out, err = command_line("exp_positional_encoding", "--quick")
    assert (code, err) == (0, "") and "✗" not in out and "看流程，不下结论" in out and not re.search("更低|更高|分不出|所以：", out)
    assert (tmp_path / "outputs" / "positional_encoding.png").stat().st_size > 20_000


# ---- exp_memmap_dataloader ----


def test_shards_equal_the_reference(tmp_path):
    """每个样本与原书的数据集相同；分成几片时，每一片各自相同。"""
    reference = pytest.importorskip("llms_from_scratch.ch02", reason="没有装 llms-from-scratch，无法与它比较").GPTDatasetV1
    module, ids = load("exp_memmap_dataloader"), np.random.default_rng(0).integers(0, 50257, 1000)
    for size in (1000, 300):
        folder = tmp_path / str(size)
        folder.mkdir()
        module.write_shards(ids, folder, size)
        ours = module.ShardDataset(folder, 16, 5)
        theirs = [sample for start in range(0, 1000, size) for sample in reference(" ".join(map(str, ids[start : start + size])), Numbers(), 16, 5)]
        assert len(ours) == len(theirs)
        assert all(torch.equal(a, b) for i in range(len(ours)) for a, b in zip(ours[i], theirs[i]))
        batch = ours.__getitems__([3, 0, len(ours) - 1])
        assert torch.equal(batch[0][2], theirs[-1][0]) and batch[0].dtype == torch.int64 and batch[1].is_contiguous()


def test_spoiled_shards(tmp_path):
    module, ids = load("exp_memmap_dataloader"), np.arange(1000)
    with pytest.raises(ValueError, match="index.json"):
        module.ShardDataset(tmp_path, 16, 5)
    module.write_shards(ids, tmp_path, 400)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.json", "shard_0000.bin", "shard_0001.bin", "shard_0002.bin"]
    with pytest.raises(ValueError, match="凑不出一个样本"):
        module.ShardDataset(tmp_path, 400, 5)
    (tmp_path / "shard_0001.bin").write_bytes((tmp_path / "shard_0001.bin").read_bytes()[:-2])
    with pytest.raises(ValueError, match="shard_0001.bin 应有 800 字节，实际 798 字节"):
        module.ShardDataset(tmp_path, 16, 5)
    (tmp_path / "shard_0001.bin").unlink()
    with pytest.raises(ValueError, match="实际 0 字节"):
        module.ShardDataset(tmp_path, 16, 5)
    with pytest.raises(ValueError, match="超出了 uint16"):
        module.write_shards(np.array([70_000]), tmp_path)
    (tmp_path / "index.json").write_text("[", encoding="utf-8")
    with pytest.raises(ValueError, match="index.json"):
        module.ShardDataset(tmp_path, 16, 5)


def test_opening_reads_nothing(tmp_path):
    """打开一千万个词元：读不到 1 MB，自己的内存多不到 5 MB；改成整个读进来，就量得出来。"""
    module = load("exp_memmap_dataloader")
    module.write_shards(np.zeros(10_000_000, dtype=np.uint16), tmp_path, 2_000_000)
    opened = module.opening(lambda: module.ShardDataset(tmp_path, 256, 128))
    assert opened["样本"] == len(opened["数据集"]) and not opened["读"] > 1 and not opened["自己"] > 5
    read = module.opening(lambda: [np.fromfile(path, "<u2") for path in tmp_path.glob("*.bin")])
    assert not read["读"] < 19  # 量不出时是 nan


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="这个系统不能把文件赶出页缓存")
def test_leaving_the_page_cache(tmp_path):
    """赶出页缓存之后，mincore 说内存里一页也没有；读一遍又都有了。"""
    import ctypes

    module = load("exp_memmap_dataloader")
    module.write_shards(np.random.default_rng(0).integers(0, 50257, 1_000_000, dtype=np.uint16), tmp_path)

    def cached():
        ids = np.memmap(tmp_path / "shard_0000.bin", dtype="<u2", mode="r")
        pages = (ctypes.c_ubyte * (ids.nbytes // 4096))()
        assert ctypes.CDLL(None).mincore(ctypes.c_void_p(ids.ctypes.data), ctypes.c_size_t(ids.nbytes // 4096 * 4096), pages) == 0
        return sum(page & 1 for page in pages) / len(pages)

    assert module.leave_cache(tmp_path) and cached() < 0.1
    module.enter_cache(tmp_path)
    assert cached() > 0.9


def test_both_datasets_give_whole_batches(tmp_path):
    """两种都一次给一批，才比得公平；给的也相同。"""
    module, ids = load("exp_memmap_dataloader"), np.random.default_rng(0).integers(0, 50257, 600)
    module.write_shards(ids, tmp_path)
    listed, sharded = module.ListDataset(ids, 16, 5), module.ShardDataset(tmp_path, 16, 5)
    assert all(torch.equal(a, b) for a, b in zip(listed.__getitems__([5, 0, 9]), sharded.__getitems__([5, 0, 9])))


def test_memmap_short_text(command_line, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("one two three", encoding="utf-8")
    code, out, err = command_line("exp_memmap_dataloader", "--text", path)
    assert (code, out) == (2, "") and "Traceback" not in err and "凑不出" in err.splitlines()[-1]
