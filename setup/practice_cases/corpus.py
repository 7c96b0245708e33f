"""语料和分片的组件：拼成一长串词元、一个窗口一个窗口地读、每字节几比特、要么完整要么没有的文件

怎么写一项，见 setup/practice.md「加一个组件」。这里不在顶层导入 torch：列清单要立刻。
"""

import contextlib
import os
import tempfile
from itertools import islice
from pathlib import Path
from unittest import mock

# ── pack ──


def code_points(text):
    """一个字符一个编号。"""
    return [ord(letter) for letter in text]


def pack_values(ns):
    return {"两篇": ns.pack(["ab", "c"], code_points, 256).tolist(), "一篇空的": ns.pack(["", "x"], code_points, 256).tolist()}


def pack_type(ns):
    ids = ns.pack(iter(["龙", "y"]), code_points, 65535)
    return {"数据类型": ids.dtype.str, "每个几字节": ids.itemsize, "编号": ids.tolist()}


def pack_none(ns):
    ids = ns.pack([], code_points, 9)
    return {"没有文档": ids.tolist(), "数据类型": ids.dtype.str}


def pack_refuses(ns):
    return {"编号太大": ns.pack(["a"], code_points, 65536)}


# ── window_stream ──


def some_shards():
    """四个分片，一个不够长，数就是位置：看得出窗口从哪里来。"""
    import numpy as np

    return [np.arange(100, dtype="<u2"), np.arange(1000, 1060, dtype="<u2"), np.arange(2000, 2040, dtype="<u2"), np.arange(3000, 3003, dtype="<u2")]


def taken(ns, count, *args, group=2):
    """取几个窗口；group 是几个分片混在一起。"""
    names = ns.window_stream.__globals__
    before, names["GROUP"] = names.get("GROUP"), group
    try:
        return [[epoch, position, window.tolist()] for epoch, position, window in islice(ns.window_stream(some_shards(), 8, *args), count)]
    finally:
        names["GROUP"] = before


def stream_values(ns):
    return {"头 25 个": taken(ns, 25, 123, 0, 0), "全混在一起": taken(ns, 8, 123, 0, 0, group=64), "一个分片一组": taken(ns, 8, 123, 0, 0, group=1)}


def stream_resumes(ns):
    return {f"从第 {epoch} 轮的第 {position} 个接着": taken(ns, 9, 123, epoch, position) for epoch, position in [(0, 1), (0, 11), (0, 16), (3, 7)]} | {
        "一个分片一组，从第 18 个接着": taken(ns, 9, 123, 0, 18, group=1)
    }


def stream_order(ns):
    """一轮里每个窗口一次；换种子、换一轮，次序和起点都变。"""
    rows = taken(ns, 60, 5, 0, 0)
    first = [window[0] for epoch, _, window in rows if epoch == 0]
    return {
        "第 1 轮的起点，排过序": sorted(first),
        "第 2 轮": [window[0] for epoch, _, window in rows if epoch == 1],
        "换种子": [row[2][0] for row in taken(ns, 12, 6, 0, 0)],
    }


# ── bits_per_byte、token_bytes ──


class TinyVocab:
    """五个词元的假词表，用法与 tiktoken 相同；特殊词元不在 token_byte_values 里。"""

    tokens = ["a".encode(), "龙".encode(), " the".encode(), b"\xe9\xbe"]

    def token_byte_values(self):
        return self.tokens

    def encode_single_token(self, token):
        return {0: 3, 1: 0, 2: 1, 3: 2}[self.tokens.index(token)]


def byte_lengths(ns):
    return {"每个词元几个字节": ns.token_bytes(TinyVocab(), 5)}


def bits_values(ns):
    import math

    return {
        "均匀的字节": ns.bits_per_byte(1000 * math.log(256), 1000),
        "三字节一个词元": ns.bits_per_byte(10 * 4.5, 30),
        "张量也行": float(ns.bits_per_byte(12.0, ns.token_bytes(TinyVocab(), 5).sum())),
    }


# ── atomic ──


@contextlib.contextmanager
def folder():
    """一个临时文件夹，里面有一个旧文件。"""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "a.txt"
        path.write_text("旧的", encoding="utf-8")
        yield path


def look(path):
    """文件夹里有什么，旧文件里是什么。"""
    return {
        "内容": path.read_bytes().decode("utf-8", "replace") if path.exists() else "没有了",
        "文件": ["a.txt" if name == "a.txt" else "别的" for name in sorted(os.listdir(path.parent))],
    }


def atomic_writes(ns):
    with folder() as path:
        with ns.atomic(path) as file:
            file.write("新的\n一行")
            file.flush()
            inside = look(path)
        with ns.atomic(path.with_name("b.bin"), "wb") as file:
            file.write(b"\x00\xff")
        return {
            "写到一半": inside,
            "写完": path.read_bytes().decode("utf-8") if path.exists() else None,
            "字节": list(path.with_name("b.bin").read_bytes()) if path.with_name("b.bin").exists() else None,
            "剩下": len(os.listdir(path.parent)),
        }


def atomic_fails(ns):
    """写到一半出错：异常照样往外抛，旧的完好，临时文件没有了。"""
    result = {}
    for name, error in {"别的错": KeyError("x"), "磁盘满": OSError(28, "满了")}.items():
        with folder() as path:
            try:
                with ns.atomic(path) as file:
                    file.write("半个")
                    raise error
            except Exception as caught:
                result[name] = [type(caught).__name__, look(path)]
    return result


def atomic_order(ns):
    """落盘在前，改名在后。"""
    steps, sync, replace = [], os.fsync, os.replace
    with (
        folder() as path,
        mock.patch("os.fsync", lambda number: (steps.append("落盘"), sync(number))),
        mock.patch("os.replace", lambda *names: (steps.append("改名"), replace(*names))),
    ):
        with ns.atomic(path) as file:
            file.write("x" * 10)
        size = path.stat().st_size if path.exists() else None
    return {"次序": steps, "大小": size}


def atomic_flushes(ns):
    """落盘的时候，缓冲区里的都已经交给系统了。"""
    sizes, sync = [], os.fsync
    with folder() as path, mock.patch("os.fsync", lambda number: (sizes.append(os.fstat(number).st_size), sync(number))):
        with ns.atomic(path) as file:
            file.write("x" * 10)
    return {"落盘时多大": sizes}


def atomic_two(ns):
    """两个进程写同一个名字，临时文件不是同一个。"""
    seen = []
    with folder() as path:
        for number in (11, 22):
            with mock.patch("os.getpid", lambda number=number: number), ns.atomic(path) as file:
                seen.append(Path(file.name).name)
                file.write("x")
    return {"临时文件不同名": len(set(seen)) == 2, "在同一个文件夹": all(name != "a.txt" for name in seen)}


COMPONENTS = [
    dict(
        name="pack",
        title="拼成一长串词元",
        section="实验",
        source="ch05/experiments/exp_corpus_prepare.py",
        parts=["pack"],
        task='写函数 pack(documents, encode, end)：documents 是一篇篇文本（可迭代），encode 把文本变成编号的列表，end 是结束词元的编号。首尾相接拼成一个 NumPy 数组，每篇后面放一个 end，数据类型是小端的 uint16（"<u2"）。end 大于 65535 时 ValueError。',
        blanks=["end >= 2**16", "[i for document in documents for i in [*encode(document), end]]", '"<u2"'],
        cases=[("拼起来", pack_values), ("数据类型", pack_type), ("没有文档", pack_none), ("拒绝", pack_refuses)],
        mutants=[
            ("[*encode(document), end]", "encode(document)", "没有结束词元。两篇粘在一起，模型会以为后一篇是前一篇的下文。"),
            ("[*encode(document), end]", "[end, *encode(document)]", "结束词元放在了前面。一篇完了才知道完了，最后一篇就没有结尾。"),
            ('"<u2"', '"<i2"', "用了有符号的 16 位。32767 以上的编号变成负数，GPT-2 的词表有 5 万个。"),
            ('"<u2"', '">u2"', "高位在前。别的程序按低位在前来读，256 就成了 1。"),
            ('"<u2"', '"<u4"', "每个词元用了 4 个字节。GPT-2 的编号 2 个字节就放得下，磁盘多占一倍。"),
            ("end >= 2**16", "end > 2**16", "差了一个。uint16 最大是 65535，65536 已经放不下了。"),
            (
                "[i for document in documents for i in [*encode(document), end]]",
                "[i for document in documents for i in encode(document)] + [end]",
                "只在最后放了一个结束词元。中间的几篇还是粘在一起。",
            ),
        ],
    ),
    dict(
        name="window_stream",
        title="接得上的窗口",
        section="实验",
        source="ch05/experiments/exp_shard_reader.py",
        parts=["window_stream"],
        extra={"GROUP": "ch05/experiments/exp_shard_reader.py"},
        task="写生成器 window_stream(shards, context_length, seed, epoch, position)：没有尽头地给出（走到第几轮, 这一轮取了几个, 窗口），窗口是分片里连着的 context_length + 1 个词元。每一轮：rng = np.random.default_rng([seed, epoch])；分片按 rng.permutation(len(shards)) 的次序，每 GROUP 个一组。"
        "一组里依次给每个分片列出起点 range(rng.integers(context_length), 分片长度 − context_length, context_length)，得到一列（第几个分片, 起点），做成 (n, 2) 的数组，用 rng.permutation 打乱，一行一个窗口。这一轮的前 position 个跳过不给。一轮完了，轮数加 1，从第 0 个起。",
        blanks=[
            "np.random.default_rng([seed, epoch])",
            "rng.permutation(len(shards))",
            "rng.integers(context_length)",
            "mixed[position - done if done < position else 0 :]",
            "shards[i][start : start + context_length + 1]",
            "epoch + 1, 0",
        ],
        cases=[("取 25 个", stream_values), ("从中间接着", stream_resumes), ("次序", stream_order)],
        mutants=[
            ("[position - done if done < position else 0 :]", "[:]", "没有跳过取过的。接着练时又从这一轮的开头读，前面的学两遍，后面的学不到。"),
            (
                "[position - done if done < position else 0 :]",
                "[position:]",
                "每一组都跳过了 position 个。只该跳过一共 position 个，走过的组全跳，后面的一个也不跳。",
            ),
            ("[seed, epoch]", "[seed]", "每轮的次序都一样。每一批永远是那几个窗口在一起，打乱就少了意义。"),
            ("[seed, epoch]", "[seed, epoch, position]", "次序跟着 position 变了。从中间接着时，排出来的是另一个次序，有的取两遍，有的取不到。"),
            ("context_length + 1]", "context_length]", "少取了一个。前 t 个是输入，后 t 个是目标，一共要 t + 1 个。"),
            (
                "len(shards[i]) - context_length, context_length",
                "len(shards[i]), context_length",
                "最后的窗口不够长。起点最大是 len(shard) − t − 1，再往后就凑不齐 t + 1 个。",
            ),
            ("rng.integers(context_length)", "0", "每轮都从第 0 个切起。窗口的边界永远在同样的地方，边界上的词元总是没有上文。"),
            (
                "rng.permutation(np.array(places).reshape(-1, 2))",
                "np.array(places).reshape(-1, 2)",
                "一组里没有打乱。一个分片一个分片地读，学了后面的，忘了前面的。",
            ),
            ("done += len(mixed)", "done = len(mixed)", "跳过的个数没有累加。走到第三组时，只记得第二组有几个。"),
            ("epoch + 1, 0", "epoch + 1, 1", "新的一轮漏了头一个。从第 0 个数起，一个也没取时是 0。"),
            ("epoch, position = epoch + 1, 0", "position = 0", "轮数没有加 1。永远在第一轮，次序也就永远是那一个。"),
        ],
    ),
    dict(
        name="bits_per_byte",
        title="每字节几比特",
        section="实验",
        source="ch05/experiments/exp_shard_reader.py",
        parts=["token_bytes", "bits_per_byte"],
        task="写两个函数。token_bytes(vocab, vocab_size)：返回 (V,) 的张量，第 i 个是编号 i 的词元有几个字节；vocab.token_byte_values() 给出全部普通词元的字节，vocab.encode_single_token(字节) 给出它的编号；别的编号（特殊词元）是 0。"
        "bits_per_byte(nats, count)：nats 是每个位置的交叉熵（自然对数）加起来，count 是目标一共几个字节，返回每字节几比特。",
        blanks=["torch.zeros(vocab_size)", "lengths[vocab.encode_single_token(token)] = len(token)", "nats / math.log(2) / count"],
        cases=[("词元的字节", byte_lengths), ("换算", bits_values)],
        mutants=[
            ("nats / math.log(2) / count", "nats / count", "忘了除以 ln 2。单位还是奈特，数小了三成。"),
            ("nats / math.log(2) / count", "nats * math.log(2) / count", "乘了 ln 2。1 奈特是 1.44 比特，比特的数应当更大。"),
            ("nats / math.log(2) / count", "nats / math.log(10) / count", "换成了以 10 为底。比特是以 2 为底的。"),
            ("torch.zeros(vocab_size)", "torch.ones(vocab_size)", "特殊词元也算了 1 个字节。结束词元不是文本，文件里没有它。"),
            ("= len(token)", '= len(token.decode("utf-8", "replace"))', "数的是字符，不是字节。一个汉字 3 个字节，中文的数会大三倍。"),
            (
                "lengths[vocab.encode_single_token(token)]",
                "lengths[vocab.token_byte_values().index(token)]",
                "按先后放，没有按编号放。token_byte_values 的次序不是编号的次序。",
            ),
        ],
    ),
    dict(
        name="atomic",
        title="要么完整，要么没有",
        section="实验",
        source="ch05/experiments/exp_corpus_clean.py",
        parts=["atomic"],
        task='用 @contextmanager 写 atomic(path, mode="w")：with 里拿到一个打开的文件，往里写；出了 with，path 就是完整的新内容。做法：在同一个文件夹里写临时文件，名字带上进程号（os.getpid()）；写完 flush，再 os.fsync，再 os.replace 成 path。mode 里没有 b 时用 encoding="utf-8"、newline="\\n"。'
        "半路出错，旧的 path 完好，临时文件删掉；OSError 换成一句中文的 OSError 再抛，别的异常原样抛。",
        blanks=["file.flush()", "os.fsync(file.fileno())", "os.replace(part, path)", "part.unlink(missing_ok=True)", "{os.getpid()}"],
        cases=[("写完", atomic_writes), ("写到一半出错", atomic_fails), ("次序", atomic_order), ("缓冲区", atomic_flushes), ("两个进程", atomic_two)],
        mutants=[
            ("os.replace(part, path)", "pass", "没有改名。写好的内容留在临时文件里，path 还是旧的，或者没有。"),
            ("os.fsync(file.fileno())", "pass", "没有等数据落盘。改名可能先落盘，断电之后，改了名的是个空文件。"),
            ("file.flush()", "pass", "没有 flush 就落盘。Python 的缓冲区里还有没交给系统的，fsync 管不到它们。"),
            ("part.unlink(missing_ok=True)", "pass", "出错之后没有删临时文件。磁盘本来就满了，还留着半个没用的。"),
            (".{os.getpid()}.part", ".part", "临时文件的名字里没有进程号。两个进程写同一个名字，会写进同一个临时文件，改名的就是混在一起的。"),
            (
                "except OSError as error:\n        raise",
                "except Exception as error:\n        raise",
                "别的异常也说成了写不进。自己的代码出了错，读者却去查磁盘。",
            ),
        ],
    ),
]
