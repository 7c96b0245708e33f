"""exp_corpus_read、exp_corpus_clean、exp_corpus_prepare、exp_shard_reader、exp_pretrain_corpus：断了接得上，坏的说得清，弄坏一处抓得住。

运行：python -m pytest ch05/tests/test_pretrain_corpus.py
杀得更多：python ch05/tests/corpus_kill_trials.py 一个空文件夹 20 60 10
"""

import gzip
import io
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

TESTS = Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS))
import corpus_kill_trials as trials  # noqa: E402

FOLDER = TESTS.parent / "experiments"
NAMES = {name: f"exp_{name}" for name in ("corpus_read", "corpus_clean", "corpus_prepare", "shard_reader", "pretrain_corpus")}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def scripts():
    return SimpleNamespace(**{name: trials.load(file) for name, file in NAMES.items()})


def broken(name, old, new):
    """改坏一行的脚本。"""
    source = (FOLDER / f"{NAMES[name]}.py").read_text(encoding="utf-8")
    assert source.count(old) >= 1, old
    module = type(os)(f"broken_{name}")
    module.__file__ = str(FOLDER / f"{NAMES[name]}.py")
    exec(compile(source.replace(old, new), module.__file__, "exec"), module.__dict__)
    return module


def command(module, *args):
    """像在命令行里那样运行：退出码、输出、stderr 的最后一行。"""
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = [module.__name__, *map(str, args)]
    real, sys.stderr = sys.stderr, err
    try:
        with redirect_stdout(out):
            module.main()
        code = 0
    except SystemExit as stopped:
        code = stopped.code or 0
    finally:
        sys.argv, sys.stderr = argv, real
    return code, out.getvalue(), (err.getvalue().splitlines() or [""])[-1]


def small(*modules):
    for module in modules:
        if hasattr(module, "BLOCK_BYTES"):
            module.BLOCK_BYTES, module.DOC_CHARS = 20_000, 1000
        if hasattr(module, "TINY"):
            module.TINY, module.EVAL_TOKENS, module.draw = module.CONFIG | trials.TINY, 512, lambda *args: None
            module.say.__defaults__ = (8,)
            module.PROMPTS = {"made": ["The "]}
    return modules


@pytest.fixture(scope="module")
def corpus(scripts, tmp_path_factory):
    """一份小语料：文件、做好的文件夹。"""
    folder = tmp_path_factory.mktemp("corpus")
    trials.write_texts(folder / "texts")
    small(scripts.corpus_clean, scripts.pretrain_corpus)
    assert command(scripts.corpus_clean, "--input", folder / "texts", "--out", folder / "made", "--workers", 1)[0] == 0
    code, out, err = command(scripts.corpus_prepare, "--corpus", folder / "made", "--vocab", 400, "--held-out", 100, "--workers", 1)
    assert code == 0 and "✗" not in out, err
    return folder


# ---- 读 ----


def test_read_and_shard_reader_show(scripts, corpus):
    scripts.corpus_read.LONG_BYTES, scripts.corpus_read.BLOCK_BYTES = 400_000, 100_000
    for module, args in ((scripts.corpus_read, []), (scripts.shard_reader, ["--corpus", corpus / "made"])):
        code, out, err = command(module, *args)
        assert code == 0 and "✗" not in out and out.count("✓") == 5, out + err


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.txt", "春眠不觉晓，\n".encode() * 500 + b"\xff" + "处处闻啼鸟。\n".encode() * 500, ["第 501 行第 1 个字节是 0xFF"]),
        ("a.txt", bytes(range(256)) * 9, ["二进制"]),
        ("a.jsonl", b'{"text": "good"}\n\n{"txt": "bad"}\n', ["第 3 行", "JSON"]),
        ("a.jsonl", b"[1, 2]\n", ["第 1 行"]),
        ("a.txt.gz", gzip.compress(os.urandom(60_000))[:-30], ["读"]),
        ("a.txt.gz", b"not gzip", ["读不了"]),
        ("a.txt", b"", ["一篇文档也没有"]),
        ("a.txt", b"x" * 90_000, ["长过"]),
        ("a.png", b"abc", ["没有认得的文件"]),
    ],
)
def test_bad_files_are_named(scripts, tmp_path, name, data, words):
    small(scripts.corpus_clean)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / name).write_bytes(data)
    code, _, err = command(scripts.corpus_clean, "--input", folder, "--out", tmp_path / "out", "--workers", 1)
    assert code == 2 and all(word in err for word in words), err
    assert not list(tmp_path.rglob("*.part")) and not (tmp_path / "out" / "docs" / "index.json").exists()


def test_bad_line_far_inside_a_cut_file(scripts, tmp_path):
    """坏字节在切开的第三段里：行号要从文件的开头数。"""
    lines = [f"第 {i} 行：春眠不觉晓，处处闻啼鸟。".encode() for i in range(1, 2001)]
    lines[1499] = lines[1499][:-1]
    (tmp_path / "a.txt").write_bytes(b"\n".join(lines))
    code, _, err = command(scripts.corpus_clean, "--input", tmp_path / "a.txt", "--out", tmp_path / "out", "--workers", 1)
    assert code == 2 and "第 1500 行" in err, err
    code, out, _ = command(scripts.corpus_clean, "--input", tmp_path / "a.txt", "--out", tmp_path / "out", "--workers", 1, "--skip-bad")
    assert code == 0 and "跳过的 1 行" in out
    text = "".join(row["text"] for path in sorted((tmp_path / "out" / "docs").glob("docs_*")) for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()) if "text" in row)
    assert "第 1499 行" in text and "第 1500 行" not in text and "第 2000 行" in text


def test_unreadable_and_missing(scripts, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "gone.txt").symlink_to(tmp_path / "nowhere")
    code, _, err = command(scripts.corpus_clean, "--input", tmp_path / "in", "--out", tmp_path / "out")
    assert code == 2 and "读不了" in err
    assert "没有这个文件" in command(scripts.corpus_clean, "--input", tmp_path / "no", "--out", tmp_path / "out")[2]
    assert "--workers" in command(scripts.corpus_clean, "--workers", 0)[2]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("packed", [False, True])
def test_encodings(scripts, tmp_path, encoding, packed):
    text = "春眠不觉晓，处处闻啼鸟。\n夜来风雨聲，花落知多少。\n別我已為泉下土，思君猶似掌中珠。\n" * 40
    path = tmp_path / f"a.txt{'.gz' if packed else ''}"
    path.write_bytes((gzip.compress if packed else bytes)(text.encode(encoding)))
    piece = {"path": str(path), "kind": "text", "encoding": scripts.corpus_read.encoding_of(path), "start": 0, "end": path.stat().st_size}
    assert "".join("".join(scripts.corpus_read.documents(piece, False, {})).split()) == "".join(text.split())


def test_jsonl_with_bom_and_long_texts(scripts, tmp_path):
    rows = [{"text": "word " * 300 + "\n\n" + "next " * 300 + "\n\nend."}, {"text": "short"}, {"text": "春眠不觉晓，" * 20, "id": 3}]
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode())
    small(scripts.corpus_clean)
    code, out, err = command(scripts.corpus_clean, "--input", tmp_path / "a.jsonl", "--out", tmp_path / "out", "--workers", 1)
    assert code == 0 and "文档 3 篇；太短、没有要的 2 篇" in out, out + err


# ---- 清理、切词元 ----


def test_documents_of_builtin_sources(scripts):
    source = 'def f(x):\n    """Return the sum of all values that were given to it a moment before.\n\n    Short.\n    """\n'
    assert scripts.corpus_read.prose(source) == "Return the sum of all values that were given to it a moment before."
    assert scripts.corpus_read.prose("def broken(:") == ""
    code = "import os\n\n\ndef f():\n    a = 1\n\n    b = 2\n\n\nclass A:\n    pass"
    scripts.corpus_read.DOC_CHARS, real = 5, scripts.corpus_read.DOC_CHARS
    try:
        assert scripts.corpus_read.cut_long(code) == ["import os", "def f():\n    a = 1\n\n    b = 2", "class A:\n    pass"]
    finally:
        scripts.corpus_read.DOC_CHARS = real
    assert scripts.corpus_read.clean("a\r\nb \t\n\n\n\n\n\n  c\x00\r") == "a\nb\n\n\n  c"


def shards_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*_*.bin"))}


def texts_in(module, folder, split):
    """一份语料里的文档，从分片解回来。"""
    vocab = module.load_vocab(folder / "vocab.json")
    return [text for path in sorted(folder.glob(f"{split}_*.bin")) for text in vocab.decode(np.fromfile(path, "<u2").tolist()).split(module.END)[:-1]]


def test_everything_comes_back(scripts, corpus):
    """每篇文档都在，都只在一边；训练的和留出的，没有几乎一样的。"""
    train, val = (texts_in(scripts.corpus_prepare, corpus / "made", split) for split in ("train", "val"))
    index = json.loads((corpus / "made" / "index.json").read_text(encoding="utf-8"))
    assert len(train) == index["stats"]["训练的"] and len(val) == index["stats"]["留出的"] and len(val) > 5
    assert index["stats"]["几乎一样的"] >= 2
    rows = [row for path in sorted((corpus / "made" / "docs").glob("docs_*")) for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()) if "text" in row]
    assert set(train) | set(val) <= {row["text"] for row in rows}
    assert len({" ".join(text.split()) for text in train + val}) == len(train) + len(val)
    assert closest(train, val) < 0.8


def closest(train, val):
    """留出的与训练的，最像的一对有多像（逐对算真的杰卡德相似度，不用 MinHash）。"""
    sets = [[frozenset(zip(*[text.lower().split()[i:] for i in range(5)])) for text in texts if len(text) > 300] for texts in (train, val)]
    return max(len(a & b) / len(a | b) for a in sets[0] for b in sets[1])


def remake(module, corpus, folder, *args, extra=None):
    """用（改坏的）脚本另做一份分片。"""
    shutil.copytree(corpus / "made" / "docs", folder / "docs")
    if extra:
        extra(folder / "docs")
    return command(module, "--corpus", folder, "--vocab", 400, "--held-out", 100, "--workers", 1, *args)


def test_same_bytes_with_several_processes(scripts, corpus, tmp_path):
    (tmp_path / "docs").mkdir()
    shutil.copytree(corpus / "made" / "docs", tmp_path / "docs", dirs_exist_ok=True)
    subprocess.run([sys.executable, FOLDER / "exp_corpus_prepare.py", "--corpus", tmp_path, "--vocab", "400", "--held-out", "100", "--workers", "2"], check=True, stdout=subprocess.DEVNULL)
    assert shards_of(tmp_path) == shards_of(corpus / "made")
    assert (tmp_path / "index.json").read_bytes() == (corpus / "made" / "index.json").read_bytes()


def leaks(module, corpus, folder):
    code, out, err = remake(module, corpus, folder)
    train, val = (texts_in(module, folder, split) for split in ("train", "val"))
    ends = sum(int((np.frombuffer(data, "<u2") == 399).sum()) for data in shards_of(folder).values())
    return code or closest(train, val) >= 0.8 or ends != json.loads((folder / "index.json").read_text(encoding="utf-8"))["stats"]["训练的"] + len(val) or "✗" in out


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"x" if duplicate else', '"x" if duplicate == "一模一样的" else'),  # 几乎一样的没有删：一篇在训练里，一篇在评估里
        ('(("train", "t"), ("val", "v"))', '(("train", "t"), ("val", "t"))'),  # 留出的就是训练的
        ("[*encode(document), end]", "[*encode(document)]"),  # 没有结束词元
        ("seen.add(mark)", "seen.add(i)"),  # 一模一样的没有认出来（签名也相同，另算成几乎一样的）
        ("os.replace(part, path)", "pass"),  # 临时文件没有改名
        ("sketch.hashvalues = signs[i]", "sketch.hashvalues = signs[0]"),  # 签名错位
    ],
)
def test_broken_prepare_is_caught(scripts, corpus, tmp_path, old, new):
    """弄坏一处，要么漏题，要么数目不对，要么做不成。"""
    module = broken("corpus_prepare", old, new)
    try:
        caught = leaks(module, corpus, tmp_path)
    except (OSError, ValueError):
        caught = True
    if not caught:
        stats = [json.loads((folder / "index.json").read_text(encoding="utf-8"))["stats"] for folder in (tmp_path, corpus / "made")]
        caught = stats[0] != stats[1]
    assert caught


def held_out_moves(module, corpus, folder):
    """前面多了几篇文档，原来留出的还是不是留出的。"""

    def add(docs):
        rows = (docs / "docs_00000.jsonl").read_text(encoding="utf-8")
        new = [json.dumps({"hash": f"{i:032x}"[::-1], "text": f"A new text number {i} about something else entirely, {i * 7919} times over."}) for i in range(3)]
        (docs / "docs_00000.jsonl").write_text("\n".join(new) + "\n" + rows, encoding="utf-8")
        index = json.loads((docs / "index.json").read_text(encoding="utf-8"))
        index["docs"]["docs_00000.jsonl"] = module.digest(docs / "docs_00000.jsonl")
        (docs / "index.json").write_text(json.dumps(index), encoding="utf-8")

    code, _, err = remake(module, corpus, folder, extra=add)
    assert code == 0, err
    return not set(texts_in(module, corpus / "made", "val")) <= set(texts_in(module, folder, "val"))


def test_held_out_by_content(scripts, corpus, tmp_path):
    assert not held_out_moves(scripts.corpus_prepare, corpus, tmp_path / "a")
    assert held_out_moves(broken("corpus_prepare", "int(mark[:8], 16) % 1000", "len(fate) * 37 % 1000"), corpus, tmp_path / "b")


@pytest.mark.parametrize("mutant", [False, True])
def test_vocab_never_sees_held_out(scripts, corpus, tmp_path, mutant):
    """学词表的时候，留出的文档一篇也没有读。"""
    module = broken("corpus_prepare", 'in texts_of(docs, number, fate, "t"):\n            pieces', 'in texts_of(docs, number, fate.replace("v", "t"), "t"):\n            pieces') if mutant else broken("corpus_prepare", "END", "END")
    real, used = module.count_pieces, []
    module.count_pieces = lambda text: used.append(text) or real(text)
    assert remake(module, corpus, tmp_path)[0] == 0
    assert bool(set(used) & set(texts_in(module, tmp_path, "val"))) == mutant


def test_changed_input_starts_again(scripts, tmp_path):
    """做到一半，文件改了：不会把新旧混在一起；做好之后改了，说是另一份语料。"""
    trials.write_texts(tmp_path / "in")
    small(scripts.corpus_clean)
    args = ["--input", tmp_path / "in", "--workers", 1, "--out", tmp_path / "out"]
    real = scripts.corpus_clean.clean_job
    scripts.corpus_clean.clean_job = lambda number, *rest: real(number, *rest) if number < 3 else (_ for _ in ()).throw(OSError("停"))
    try:
        assert command(scripts.corpus_clean, *args)[0] == 2
    finally:
        scripts.corpus_clean.clean_job = real
    path = tmp_path / "in" / "text00.txt"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("river", "RIVER"), encoding="utf-8")  # 长短不变
    os.utime(path, (1, 1))
    assert command(scripts.corpus_clean, *args)[0] == 0
    assert "RIVER" in (tmp_path / "out" / "docs" / "docs_00000.jsonl").read_text(encoding="utf-8") + (tmp_path / "out" / "docs" / "docs_00001.jsonl").read_text(encoding="utf-8")
    assert "已经做好了" in command(scripts.corpus_clean, *args)[1]
    path.write_text(text + " more", encoding="utf-8")
    assert "另一份语料" in command(scripts.corpus_clean, *args)[2]


def test_prepare_refuses(scripts, corpus, tmp_path):
    prepare = scripts.corpus_prepare
    assert "先运行" in command(prepare, "--corpus", tmp_path / "no")[2]
    assert "--vocab" in command(prepare, "--corpus", corpus / "made", "--vocab", "100")[2]
    assert "--held-out" in command(prepare, "--corpus", corpus / "made", "--held-out", "900")[2]
    assert "另一份分片" in command(prepare, "--corpus", corpus / "made", "--vocab", "300", "--held-out", "100")[2]
    shutil.copytree(corpus / "made" / "docs", tmp_path / "docs")
    assert "都不能是 0" in command(prepare, "--corpus", tmp_path, "--vocab", 400, "--held-out", 1, "--workers", 1)[2]
    data = bytearray((tmp_path / "docs" / "docs_00001.jsonl").read_bytes())
    data[100] ^= 1
    (tmp_path / "docs" / "docs_00001.jsonl").write_bytes(data)
    assert "docs_00001.jsonl" in command(prepare, "--corpus", tmp_path, "--vocab", 400)[2]
    with pytest.raises(ValueError, match="uint16"):
        prepare.pack(["a"], lambda text: [1], 70_000)


def test_vocab_equals_the_books(scripts, corpus):
    """自己学的词表交给 tiktoken 去编码，与第 2 章的分词器逐个相同。"""
    spec = FOLDER.parents[1] / "ch02" / "experiments" / "exp_bpe_fast.py"
    module = type(os)("bpe")
    module.__file__ = str(spec)
    exec(compile(spec.read_text(encoding="utf-8"), str(spec), "exec"), module.__dict__)
    merges = json.loads((corpus / "made" / "vocab.json").read_text(encoding="utf-8"))
    ours, theirs = scripts.corpus_prepare.load_vocab(corpus / "made" / "vocab.json"), module.BPETokenizerFast([tuple(pair) for pair in merges])
    for text in ["The river, 3 stones!\n\n  garden", "春眠不觉晓 hello　²", *texts_in(scripts.corpus_prepare, corpus / "made", "val")[:5]]:
        assert ours.encode_ordinary(text) == theirs.encode(text) and ours.decode(ours.encode_ordinary(text)) == text


# ---- 训练 ----


ARGS = ["--quick", "--steps", 12, "--batch-size", 2, "--accumulate", 2, "--eval-every", 4, "--precision", "fp32", "--device", "cpu", "--save-every", 0]


def run(module, corpus, out, *args, stop=None):
    """训练一次；stop 是第几次存完检查点就停（像被杀死那样，什么也不收拾）。"""
    (pretrain,) = small(module)
    if stop:
        real, count = pretrain.save_checkpoint, [0]

        def save(path, content):
            real(path, content)
            count[0] += 1
            if count[0] == stop:
                raise KeyboardInterrupt

        pretrain.save_checkpoint = save
    try:
        return command(pretrain, *ARGS, "--corpus", corpus / "made", "--out", out, *args)
    finally:
        if stop:
            pretrain.save_checkpoint = real


def outcome(module, out):
    content = module.load_checkpoint(out / "pretrain_made.pth")
    return content, trials.log_rows(out / "pretrain_made.jsonl")


@pytest.fixture(scope="module")
def whole(scripts, corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    code, text, err = run(scripts.pretrain_corpus, corpus, out)
    assert code == 0 and text.count("✓") == 3 and "✗" not in text, text + err
    return outcome(scripts.pretrain_corpus, out)


def resumed_differs(module, good, corpus, out, whole):
    assert run(module, corpus, out, stop=7)[0] == 130
    with open(out / "pretrain_made.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 8, "val_loss": 1}\n{"st')  # 被杀死时多写的一行半
    code, text, err = run(module, corpus, out)
    content, rows = outcome(good, out)
    return code != 0 or bool(trials.differences(whole[0], content)) or rows != whole[1]


def test_resume_is_bitwise(scripts, corpus, whole, tmp_path):
    assert not resumed_differs(scripts.pretrain_corpus, scripts.pretrain_corpus, corpus, tmp_path, whole)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('set_rng_state(content["rng"], device)', "pass"),  # 随机数没有恢复
        ('args.seed, progress["epoch"], progress["position"])', "args.seed, 0, 0)"),  # 数据位置没有恢复
        ("optimizer.load_state_dict(state)", "pass"),  # 优化器没有恢复
        ('trim_log(log, progress["step"])\n', "pass\n"),  # 日志里多写的没有删
        ('progress["running"] = [0.0, 0]', "pass"),  # 平均的损失没有清零：与没断过的也不同
        ("[position - done if done < position else 0 :]", "[:]"),  # 没有跳过取过的
        ("default_rng([seed, epoch])", "default_rng()"),  # 次序每次都不同
        ("os.replace(part, path)", "pass"),  # 临时文件没有改名
        ("(loss / args.accumulate).backward()", "loss.backward()"),  # 攒的梯度没有取平均（裁剪之后，只差在裁不裁）
        ('group["lr"] = peak * share', 'group["lr"] = peak'),  # 学习率没有按计划变
    ],
)
def test_broken_resume_is_caught(scripts, corpus, whole, tmp_path, old, new):
    try:
        caught = resumed_differs(broken("pretrain_corpus", old, new), scripts.pretrain_corpus, corpus, tmp_path, whole)
    except (AssertionError, ValueError, OSError):
        caught = True
    assert caught


def independent_bits(reader, model, folder, split="val"):
    """另算一遍每字节几比特：逐个窗口取对数概率，解回文字数字节。"""
    vocab, t = reader.load_vocab(folder / "vocab.json"), model.cfg["context_length"]
    nats, count = 0.0, 0
    for path in sorted(folder.glob(f"{split}_*.bin")):
        ids = np.fromfile(path, "<u2").astype(np.int64)
        for start in range(0, len(ids) - t, t):
            window = torch.tensor(ids[start : start + t + 1])
            with torch.no_grad():
                log_probs = model(window[None, :-1]).log_softmax(dim=-1)[0]
            nats -= log_probs[torch.arange(t), window[1:]].double().sum().item()
            count += len(vocab.decode([i for i in window[1:].tolist() if i != vocab.eot_token]).replace("\ufffd", "").encode())
    return nats / math.log(2) / count


@pytest.fixture(scope="module")
def opinionated(scripts, corpus):
    """权重随机而且大的模型：每个位置都有自己的主意，算错一处，损失就差很多。"""
    torch.manual_seed(1)
    model = scripts.pretrain_corpus.Qwen3Model(scripts.pretrain_corpus.CONFIG | trials.TINY | {"vocab_size": json.loads((corpus / "made" / "index.json").read_text(encoding="utf-8"))["vocab_size"]}).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def bits_wrong(module, model, corpus):
    index, shards = module.open_shards(corpus / "made", "val", 32)
    vocab = module.load_vocab(corpus / "made" / "vocab.json")
    lengths, poem = module.token_bytes(vocab, index["vocab_size"]), "春眠不觉晓，hello　世界"
    _, bits = module.evaluate(model, shards, lengths, 4, torch.device("cpu"), 10**9)
    model.eval()
    sizes = lengths[vocab.eot_token] != 0 or lengths[vocab.encode_ordinary(poem)].sum() != len(poem.encode())
    return sizes or abs(bits / independent_bits(module, model, corpus / "made") - 1) > 1e-5


def test_bits_per_byte(scripts, opinionated, corpus):
    assert not bits_wrong(scripts.pretrain_corpus, opinionated, corpus)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("nats / math.log(2) / count", "nats / count"),
        ("count += lengths[ids[:, 1:].cpu()].sum().item()", "count += ids[:, 1:].numel()"),
        ("count += lengths[ids[:, 1:].cpu()]", "count += lengths[ids[:, :-1].cpu()]"),
        ("model(ids[:, :-1]).flatten(0, 1).float(), ids[:, 1:].flatten()", "model(ids[:, :-1]).flatten(0, 1).float(), ids[:, :-1].flatten()"),
        ("    model.eval()\n    for start", "    model.train()\n    for start"),
        ("lengths[vocab.encode_single_token(token)] = len(token)", "lengths[vocab.encode_single_token(token)] = len(token.decode(errors='ignore'))"),
    ],
)
def test_broken_bits_are_caught(scripts, opinionated, corpus, old, new):
    torch.manual_seed(1)
    assert bits_wrong(broken("pretrain_corpus", old, new), opinionated, corpus)


def test_targets_are_shifted(scripts, corpus):
    reader = scripts.shard_reader
    _, shards = reader.open_shards(corpus / "made", "train", 32)
    place, inputs, targets = reader.next_batch(reader.window_stream(shards, 32, 1, 0, 0), 3, torch.device("cpu"))
    assert place == (0, 3) and inputs.shape == targets.shape == (3, 32) and torch.equal(inputs[:, 1:], targets[:, :-1]) and not torch.equal(inputs, targets)
    wrong = broken("shard_reader", "windows[:, :-1], windows[:, 1:]", "windows[:, :-1], windows[:, :-1]")
    _, inputs, targets = wrong.next_batch(wrong.window_stream(shards, 32, 1, 0, 0), 3, torch.device("cpu"))
    assert torch.equal(inputs, targets)
    assert "✗ 目标就是输入右移一位" in command(wrong, "--corpus", corpus / "made")[1]


@pytest.mark.parametrize("group", [1, 2, 64])
def test_every_window_once(scripts, monkeypatch, group):
    monkeypatch.setattr(scripts.shard_reader, "GROUP", group)
    shards = [np.arange(1000, dtype="<u2"), np.arange(2000, 2090, dtype="<u2"), np.arange(3000, 3010, dtype="<u2")]
    for epoch in range(3):
        seen = []
        for number, position, window in scripts.shard_reader.window_stream(shards, 32, 5, epoch, 0):
            if number != epoch:
                break
            assert len(window) == 33 and (np.diff(window.astype(int)) == 1).all() and position == len(seen) + 1
            seen.append(int(window[0]))
        assert len(set(seen)) == len(seen) and len(seen) in range(30, 33)
        stream = scripts.shard_reader.window_stream(shards, 32, 5, epoch, 17)
        assert int(next(stream)[2][0]) == seen[17]


@pytest.mark.parametrize(("damage", "caught"), [(lambda data: data[:-2], True), (lambda data: data[:50] + bytes([data[50] ^ 4]) + data[51:], True)])
@pytest.mark.parametrize("name", ["train_00001.bin", "val_00001.bin", "vocab.json"])
def test_damaged_shards(scripts, corpus, tmp_path, damage, caught, name):
    shutil.copytree(corpus / "made", tmp_path / "made", ignore=shutil.ignore_patterns("docs"))
    (tmp_path / "made" / name).write_bytes(damage((tmp_path / "made" / name).read_bytes()))
    code, _, err = command(scripts.pretrain_corpus, *ARGS, "--corpus", tmp_path / "made", "--out", tmp_path)
    assert code == 2 and name in err and "坏了" in err
    unchecked = broken("pretrain_corpus", "digest(folder / name) != expected", "False")
    if name == "train_00001.bin":
        unchecked.open_shards(tmp_path / "made", "train", 32)


def test_refuses(scripts, corpus, whole, tmp_path):
    pretrain = scripts.pretrain_corpus
    assert "先运行" in command(pretrain, "--corpus", tmp_path)[2]
    for args in (["--steps", -1], ["--batch-size", 0], ["--lr", 0], ["--lr", "nan"], ["--seed", -1]):
        assert command(pretrain, *args, "--corpus", corpus / "made")[0] == 2
    assert "找不到" in command(pretrain, "--say", "x", "--corpus", corpus / "made", "--out", tmp_path)[2]
    assert run(pretrain, corpus, tmp_path, stop=2)[0] == 130
    for args, word in ((["--seed", 9], "种子"), (["--batch-size", 4], "批"), (["--precision", "bf16"], "fp32")):
        code, _, err = run(pretrain, corpus, tmp_path, *args)
        assert code == 2 and word in err, err
    pretrain.TINY, real = pretrain.TINY | {"emb_dim": 32}, pretrain.TINY
    before = (tmp_path / "pretrain_made.pth").read_bytes()
    code, _, err = command(pretrain, *ARGS, "--corpus", corpus / "made", "--out", tmp_path)
    pretrain.TINY = real
    assert code == 2 and "模型" in err and (tmp_path / "pretrain_made.pth").read_bytes() == before
    for data in (b"", b"abc", before[: len(before) // 2]):
        (tmp_path / "pretrain_made.pth").write_bytes(data)
        code, _, err = run(pretrain, corpus, tmp_path)
        assert code == 2 and "读不出来" in err
    torch.save({"model": {}}, tmp_path / "pretrain_made.pth")
    assert "读不出来" in run(pretrain, corpus, tmp_path)[2]


@pytest.mark.parametrize("mutant", [None, ("if not (math.isfinite(total_loss) and norm.isfinite()):", "if False:")])
def test_not_finite_keeps_the_last_good_checkpoint(scripts, corpus, tmp_path, mutant):
    module = broken("pretrain_corpus", *(mutant or ("END", "END")))
    small(module)
    real, count = module.next_batch, [0]

    def poisoned(*args):
        count[0] += 1
        place, inputs, targets = real(*args)
        if count[0] == 11:  # 第 6 步的头一小批
            for parameter in model[0].parameters():
                parameter.data.fill_(float("nan"))
        return place, inputs, targets

    model, build = [], module.Qwen3Model
    module.next_batch, module.Qwen3Model = poisoned, lambda config: model.append(build(config)) or model[-1]
    code, _, err = command(module, *ARGS, "--corpus", corpus / "made", "--out", tmp_path)
    content = scripts.pretrain_corpus.load_checkpoint(tmp_path / "pretrain_made.pth")
    assert code == 2 and "好的检查点" in err and content["progress"]["step"] == 5
    assert ("第 6 步的损失是 nan" in err) == (mutant is None)  # 没有这一道检查，存的时候还有一道
    assert all(tensor.isfinite().all() for tensor in content["model"].values())


@pytest.mark.parametrize(
    ("which", "where"),
    [("pretrain_corpus", "write"), ("pretrain_corpus", "replace"), ("pretrain_corpus", "fsync"), ("corpus_clean", "write"), ("corpus_clean", "replace"), ("corpus_prepare", "write"), ("corpus_prepare", "fsync")],
)
def test_full_disk_loses_nothing(scripts, corpus, whole, tmp_path, monkeypatch, where, which):
    """磁盘满：报一句中文，旧的完好，没有留下临时文件；腾出空间再来，结果一样。"""
    module = getattr(scripts, which)
    small(module)
    if which == "pretrain_corpus":
        args, folder, run_before = [*ARGS, "--corpus", corpus / "made", "--out", tmp_path], tmp_path, 4
    elif which == "corpus_clean":
        args, folder, run_before = ["--input", corpus / "texts", "--workers", 1, "--out", tmp_path], tmp_path, 4
    else:
        shutil.copytree(corpus / "made" / "docs", tmp_path / "docs")
        args, folder, run_before = ["--corpus", tmp_path, "--vocab", 400, "--held-out", 100, "--workers", 1], tmp_path, 5
    count = [0]

    def full(real, number):
        def work(*args, **named):
            count[0] += 1
            if count[0] > number:
                raise OSError(28, "No space left on device")
            return real(*args, **named)

        return work

    with monkeypatch.context() as patch:
        if where == "write":
            real_open = open

            class Full(io.BufferedWriter):
                def write(self, data):
                    raise OSError(28, "No space left on device")

            def opening(path, mode="r", **named):
                if str(path).endswith(".part"):
                    count[0] += 1
                    if count[0] > run_before:
                        return Full(real_open(path, "wb", buffering=0)) if "b" in mode else io.TextIOWrapper(Full(real_open(path, "wb", buffering=0)), encoding="utf-8", write_through=True)
                return real_open(path, mode, **named)

            patch.setattr(module, "open", opening, raising=False)
        else:
            patch.setattr(module.os, where, full(getattr(os, where), run_before))
        code, _, err = command(module, *args)
    assert code == 2 and "磁盘满" in err, err
    assert not list(folder.rglob("*.part"))
    if which == "pretrain_corpus":
        module.load_checkpoint(tmp_path / "pretrain_made.pth")
    code, out, err = command(module, *args)
    assert code == 0 and "✗" not in out, out + err
    if which == "pretrain_corpus":
        content, rows = outcome(module, tmp_path)
        assert not trials.differences(whole[0], content) and rows == whole[1]
    elif which == "corpus_prepare":
        assert shards_of(tmp_path) == shards_of(corpus / "made")
    else:
        assert trials.listing(tmp_path / "docs") == trials.listing(corpus / "made" / "docs")


def test_full_disk_in_the_log(scripts, corpus, whole, tmp_path, monkeypatch):
    module = scripts.pretrain_corpus
    small(module)
    real_open = open

    def opening(path, mode="r", **named):
        if mode == "a":
            raise OSError(28, "No space left on device")
        return real_open(path, mode, **named)

    with monkeypatch.context() as patch:
        patch.setattr(module, "open", opening, raising=False)
        code, _, err = command(module, *ARGS, "--corpus", corpus / "made", "--out", tmp_path)
    assert code == 2 and "磁盘满" in err
    assert command(module, *ARGS, "--corpus", corpus / "made", "--out", tmp_path)[0] == 0
    assert not trials.differences(whole[0], outcome(module, tmp_path)[0])


def test_schedule(scripts):
    share = scripts.pretrain_corpus.learning_rate_share
    values = [share(step, 200) for step in range(200)]
    assert values[:10] == pytest.approx([(i + 1) / 10 for i in range(10)]) and max(values) == 1
    assert all(a >= b for a, b in zip(values[9:], values[10:])) and 0.1 <= values[-1] < 0.102
    assert [0 < share(step, 1) <= 1 for step in range(1)] == [True]


def test_accumulation_equals_one_large_batch(scripts, corpus, tmp_path):
    """两小批攒一次，与一大批：同样的窗口，梯度相同，第一步之后的权重几乎逐位相同（去掉 dropout）。"""
    module = broken("pretrain_corpus", '"drop_rate": 0.1', '"drop_rate": 0.0')
    small(module)
    ends = []
    for name, batch, accumulate in (("one", 4, 1), ("two", 2, 2)):
        args = ["--quick", "--steps", 1, "--batch-size", batch, "--accumulate", accumulate, "--precision", "fp32", "--device", "cpu", "--corpus", corpus / "made", "--out", tmp_path / name]
        code, _, err = command(module, *args)
        ends.append(module.load_checkpoint(tmp_path / name / "pretrain_made.pth"))
    a, b = (end["model"] for end in ends)
    assert all(torch.allclose(a[name], b[name], atol=2e-4) for name in a) and ends[0]["progress"]["position"] == ends[1]["progress"]["position"] == 4


def test_model_equals_qwen3(scripts):
    """现成的注意力换掉了手写的，输出与 exp_qwen3.py 的相同；看不见未来。"""
    theirs = trials.load("exp_qwen3")
    config = scripts.pretrain_corpus.CONFIG | {"vocab_size": 97, "drop_rate": 0.0} | trials.TINY | {"n_layers": 2}
    torch.manual_seed(1)
    ours, reference = scripts.pretrain_corpus.Qwen3Model(config).eval(), theirs.Qwen3Model(config | {"tied": True}).eval()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    reference.load_state_dict(ours.state_dict())
    ids = torch.randint(97, (2, 20))
    with torch.no_grad():
        assert torch.allclose(ours(ids), reference(ids), atol=1e-5)
        changed = ids.clone()
        changed[:, 10:] = 5
        assert torch.equal(ours(ids)[:, :10], ours(changed)[:, :10])
    with pytest.raises(ValueError, match="上下文长度"):
        ours(torch.zeros(1, 40, dtype=torch.long))


def test_say_and_picture(scripts, corpus, tmp_path):
    module = trials.load("exp_pretrain_corpus")
    module.TINY, module.EVAL_TOKENS = module.CONFIG | trials.TINY, 512
    module.say.__defaults__ = (8,)
    args = ["--quick", "--steps", 2, "--batch-size", 2, "--device", "cpu", "--corpus", corpus / "made", "--out", tmp_path]
    code, out, err = command(module, *args)
    assert code == 0 and "看流程，不下结论" in out and (tmp_path / "pretrain_made.png").stat().st_size > 5000, err
    one, two = (command(module, "--say", "The river", "--corpus", corpus / "made", "--out", tmp_path, "--device", "cpu")[1] for _ in range(2))
    assert one == two and one.startswith("The river")


def test_quick_from_nothing(tmp_path):
    """每个 --quick 自己都能走完，不用先运行别的。"""
    for name, args, count in (("corpus_clean", ["--out", tmp_path / "a"], 4), ("corpus_prepare", ["--corpus", tmp_path / "b"], 4), ("pretrain_corpus", ["--corpus", tmp_path / "corpus_bytes", "--out", tmp_path, "--steps", 8], 3)):
        module = trials.load(NAMES[name])
        for _ in range(2):  # 再运行一次：已经做好了
            code, out, err = command(module, "--quick", *args)
            assert code == 0 and "✗" not in out and out.count("✓") == count, out + err


def test_killed_at_random_moments(tmp_path):
    run = subprocess.run([sys.executable, TESTS / "corpus_kill_trials.py", tmp_path, "2", "3"], capture_output=True, text=True, encoding="utf-8", env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout.splitlines()[-1])
    for name, least in (("语料", 2), ("训练", 3)):
        assert results[name]["杀死"] >= least and not results[name]["错"], results


@pytest.mark.parametrize(
    ("name", "old", "new", "says"),
    [
        ("corpus_read", "> 0.5 * len(letters)", "> 0.2 * len(letters)", "坏的字节在第"),
        ("corpus_read", 'data.rfind(b"\\n") + 1', "len(data)", "big.txt.gz"),
        ("corpus_read", 'lines += data.count(b"\\n")', "pass", None),
        ("corpus_read", r"(?=[^\s)\]}])", "", "断开的地方"),
        ("corpus_read", '.replace("\\r\\n", "\\n")', "", None),
        ("shard_reader", "[position - done if done < position else 0 :]", "[:]", "从断处接着取"),
        ("shard_reader", "digest(folder / name) != expected", "False", "都不收"),
        ("shard_reader", "nats / math.log(2) / count", "nats / count", "每字节比特"),
    ],
)
def test_broken_lessons_are_caught(scripts, corpus, tmp_path, name, old, new, says):
    """改坏一处，自查里正是那一条变成 ✗；自查看不到的，上面的测试看得到。"""
    module = broken(name, old, new)
    module.LONG_BYTES = module.BLOCK_BYTES = 200_000
    if says:
        out = command(module, *(["--corpus", corpus / "made"] if name == "shard_reader" else []))
        assert any("✗" in line and says in line for line in out[1].splitlines()) or says in out[2], out
    elif "lines +=" in old:
        path = tmp_path / "a.jsonl.gz"
        rows = [json.dumps({"text": "x" * 900}).encode()] * 3000 + [b"bad"]
        path.write_bytes(gzip.compress(b"\n".join(rows), 1))
        sentences = [m.complaint(path) for m in (scripts.corpus_read, module)]
        assert "第 3001 行" in sentences[0] and "第 3001 行" not in sentences[1]
    else:
        assert module.clean("a\r\nb") != scripts.corpus_read.clean("a\r\nb") == "a\nb"


def test_random_module_is_not_used(scripts):
    """去重、留出、切词元不抽签：脚本里没有一处用到随机数。"""
    for name in ("corpus_clean", "corpus_prepare"):
        assert not re.search(r"\brandom\b", (FOLDER / f"{NAMES[name]}.py").read_text(encoding="utf-8"))
    assert random  # 上面的语料用它造
