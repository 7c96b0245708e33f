"""第 5 章 · 实验　数据走到哪里了：分片怎样读，断了从哪里接着读，换了词表怎样比

问题：　词元在磁盘上的几个分片里，怎样打乱着读，每个窗口一轮正好一次，断在任何地方都接得上，又不把次序存下来？
先猜：　同一段文字，词表从 256 变成 5 万，每个词元的损失会变大还是变小？每个字节的呢？（先想 10 秒，再运行）
看点：　① 次序由（种子，第几轮）算出来，所以只要记两个数：第几轮、取过几个；② 分片短了、坏了一位，长度看不出来的，摘要看得出来；
        ③ 表：词表越大，每个词元的损失越大，因为一个词元装的字节多了；要比，就除以字节，不除以词元。
动手改：1. 把 window_stream 里的 [position - done if done < position else 0 :] 去掉：接着读变成从头读，「从断处接着取」变成 ✗。
        2. 把 open_shards 里的 digest(folder / name) != expected 换成 False：坏了一位的分片也收下了，「短了的、坏了一位的，都不收」变成 ✗。
        3. 把 next_batch 里的 windows[:, 1:] 换成 windows[:, :-1]：目标没有右移，「目标就是输入右移一位」变成 ✗。

运行：
    python ch05/experiments/exp_shard_reader.py                                      # 没有语料时，先用自带的短篇做一份
    python ch05/experiments/exp_shard_reader.py --corpus ch05/outputs/corpus_verse   # exp_corpus_prepare.py 做好的
    约 5 秒，0.3 GB（2 核 CPU）；用它来训练，见 exp_pretrain_corpus.py

形状记号：b 批大小　t 上下文长度　n 一个分片几个词元　V 词表大小
"""

import argparse
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import tiktoken
import torch

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
# 改这里
CONTEXT_LENGTH, BATCH_SIZE, SEED = 64, 4, 123
GROUP = 64  # 打乱时，几个分片的窗口混在一起；混得越多越匀，排次序占的内存也越多
END = "<|endoftext|>"
GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


# region 沿用 ch02/experiments/exp_bpe_from_scratch.py: VISIBLE, BYTE_OF_ID
VISIBLE = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]


BYTE_OF_ID = bytes(VISIBLE + [byte for byte in range(256) if byte not in VISIBLE])
# endregion


# region 沿用 ch05/experiments/exp_corpus_clean.py: digest
def digest(path):
    """一个文件的 SHA-256，一段段地读。（详解见 ch05/experiments/exp_corpus_clean.py）"""
    result = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            result.update(data)
    return result.hexdigest()


# endregion


# region 沿用 ch05/experiments/exp_corpus_prepare.py: load_vocab
def load_vocab(path):
    """词表文件 → 分词器：合并是自己学的，编码交给 tiktoken，它是 Rust 写的。（详解见 ch05/experiments/exp_corpus_prepare.py）"""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content == "gpt2":
            return tiktoken.get_encoding("gpt2")
        tokens = [bytes([byte]) for byte in BYTE_OF_ID]
        for left, right in content:
            tokens.append(tokens[left] + tokens[right])
        ranks = {}
        for i, token in enumerate(tokens):
            ranks.setdefault(token, i)
        return tiktoken.Encoding("corpus", pat_str=GPT2_SPLIT, mergeable_ranks=ranks, special_tokens={END: len(tokens)})
    except (OSError, ValueError, TypeError, IndexError):
        raise ValueError(f"{path} 不见了，或者坏了：删掉这个文件夹，重新运行 exp_corpus_prepare.py") from None


# endregion


# region 沿用 setup/find_data.py: find_data, read_text
def find_data(*names):
    """到几个数据文件夹里依次找，返回找到的第一个；都没有，就说先运行哪条命令，退出码 2。（详解见 setup/find_data.py）"""
    here = Path(__file__ if "__file__" in globals() else "x").resolve()
    root = next((folder for folder in here.parents if (folder / "setup" / "data").is_dir()), Path())
    for folder in [os.environ.get("LLM_DATA_DIR"), root / "setup" / "downloads", root / "setup" / "data", root / "ch05" / "outputs"]:
        for name in names:
            path = Path(folder or "") / name
            if folder and (path.is_file() or any(path.glob("*"))):
                return path
    commands = {"tiktoken": "setup/prepare.py", "gpt_mini.pth": "ch05/main/gpt_train.py（约 90 秒）"}
    commands |= {f"gpt2-{size}.pth": f"ch05/main/gpt_download.py --size {size}" for size in ("124M", "355M", "774M", "1558M")}
    print(f"找不到 {names[0]}，请先运行 python {commands.get(names[0], 'setup/download.py')}", file=sys.stderr)
    sys.exit(2)


def read_text(path):
    """读一个文本文件；不是能用来训练的文本时，用一句中文说清楚。（详解见 setup/find_data.py）"""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise ValueError(f"读不了 {path}：文件不存在，或不是 UTF-8 编码的文本（请用编辑器另存为 UTF-8）") from None
    if "\0" in text or not text.strip():
        raise ValueError(f"{path} 是空的，或是二进制文件，请换一个文本文件")
    return text


# endregion

os.environ["TIKTOKEN_CACHE_DIR"] = str(find_data("tiktoken"))  # GPT-2 的词表由 setup/run.sh 放好，不联网


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def open_shards(folder, split, context_length):
    """打开词元分片：核对摘要，映射到内存。一个字也没有读进来，用到哪个窗口，系统才读哪几页。

    参数:
        folder (Path): exp_corpus_prepare.py 写的文件夹
        split (str): "train" 或 "val"
        context_length (int): 上下文长度 t

    返回:
        tuple[dict, list[np.ndarray]]: 目录；分片，每个 (n,)

    异常:
        ValueError: 没有分片，有一个短了、坏了，或都不够长
    """
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        names = [name for name in index["shards"] if name.startswith(split)] + ["vocab.json"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{folder} 里没有做好的分片：先运行 exp_corpus_clean.py 和 exp_corpus_prepare.py，再用 --corpus 指过来") from None
    for name in names:
        expected = index["shards"][name]["sha256"] if name in index["shards"] else index["vocab_sha256"]
        # 只看长度，查不出坏了一位的文件：练出来的模型差一点点，谁也不会发现。
        if not (folder / name).is_file() or digest(folder / name) != expected:
            raise ValueError(f"{folder / name} 不见了，或者坏了（摘要与 index.json 里的不同）：删掉 {folder} 里的 index.json 和 *.bin，重新运行 exp_corpus_prepare.py")
    shards = [np.memmap(folder / name, dtype="<u2", mode="r") for name in names[:-1]]
    if max(map(len, shards), default=0) <= 2 * context_length:
        raise ValueError(f"{folder} 里{'训练的' if split == 'train' else '留出的'}分片都不到 {2 * context_length} 个词元，切不出长 {context_length} 的窗口：多给一些文本")
    return index, shards


def window_stream(shards, context_length, seed, epoch, position):
    """没有尽头的窗口：一轮把每个窗口取一次，次序每轮重新打乱，从上次走到的地方接着取。

    次序只由种子和第几轮决定，不用存下来；一次只排 GROUP 个分片的次序，语料再大，也不占多少内存。

    参数:
        shards (list[np.ndarray]): 分片
        context_length (int): 上下文长度 t
        seed, epoch, position (int): 种子；第几轮；这一轮已经取过几个

    返回:
        Iterator[tuple]: 这一个之后，走到第几轮、第几个；窗口，(t + 1,)
    """
    while True:
        rng, done = np.random.default_rng([seed, epoch]), 0
        order = rng.permutation(len(shards))
        for group in (order[i : i + GROUP] for i in range(0, len(order), GROUP)):
            # 每轮换一个起点：窗口从别的地方切开，同一段话每轮的上文长短不同。
            places = [(i, start) for i in group for start in range(rng.integers(context_length), len(shards[i]) - context_length, context_length)]
            mixed = rng.permutation(np.array(places).reshape(-1, 2))  # (n, 2)　几个分片的窗口混在一起：一个一个分片地读，学了后面的，忘了前面的
            for i, start in mixed[position - done if done < position else 0 :]:
                position += 1
                yield epoch, position, shards[i][start : start + context_length + 1]
            done += len(mixed)
        epoch, position = epoch + 1, 0


def next_batch(stream, batch_size, device):
    """取一批窗口，切成输入和目标。

    参数:
        stream (Iterator): window_stream
        batch_size (int): 批大小
        device (torch.device): 放到哪里

    返回:
        tuple: 走到第几轮、第几个；输入 (b, t)；目标 (b, t)，就是输入右移一位
    """
    rows = [next(stream) for _ in range(batch_size)]
    windows = torch.from_numpy(np.stack([window for *_, window in rows]).astype(np.int64)).to(device)  # (b, t + 1)
    return rows[-1][:2], windows[:, :-1], windows[:, 1:]


def token_bytes(vocab, vocab_size):
    """每个词元是几个字节；结束词元不是文本，算 0 个。

    参数:
        vocab (tiktoken.Encoding): 词表
        vocab_size (int): 词表大小

    返回:
        Tensor: (V,)
    """
    lengths = torch.zeros(vocab_size)  # (V,)
    for token in vocab.token_byte_values():
        lengths[vocab.encode_single_token(token)] = len(token)
    return lengths


def bits_per_byte(nats, count):
    """一共多少奈特的损失 ÷ ln 2 = 多少比特；再除以这些词元一共几个字节。

    参数:
        nats (float): 每个位置的交叉熵，加起来
        count (float): 目标的词元一共几个字节

    返回:
        float: 每字节几比特；把它当压缩来看，1 个字节（8 比特）的文本压成这么多
    """
    return nats / math.log(2) / count


def unigram_bits(shards, held_out, lengths):
    """只数每个词元出现几次，每字节要几比特：什么上文也不看，能做到的最好。

    参数:
        shards, held_out (list[np.ndarray]): 训练的、留出的分片
        lengths (Tensor): 每个词元几个字节，(V,)

    返回:
        float: 每字节几比特
    """
    counts = sum(np.bincount(shard, minlength=len(lengths)) for shard in shards) + 1  # 各加 1：训练里没有的，概率也不是 0
    seen = sum(np.bincount(shard, minlength=len(lengths)) for shard in held_out)
    return bits_per_byte(-(seen * np.log(counts / counts.sum())).sum(), (seen * lengths.numpy()).sum())


# ---- 实验 ----


def quick_shards(folder):
    """没有语料也能走完流程：自带的英文短篇，一个字节一个词元，一段一篇，每 8 段留出一段。正经的做法见 exp_corpus_prepare.py。

    参数:
        folder (Path): 写到哪个文件夹
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text("[]", encoding="utf-8")
    vocab, shards = load_vocab(folder / "vocab.json"), {}
    pieces = [piece for piece in read_text(find_data("story-en.txt")).split("\n\n") if piece.strip()]
    for split, chosen in (("train", [piece for i, piece in enumerate(pieces) if i % 8]), ("val", pieces[::8])):
        path = folder / f"{split}_00000.bin"
        np.array([i for piece in chosen for i in [*vocab.encode_ordinary(piece), vocab.eot_token]], "<u2").tofile(path)
        shards[path.name] = {"tokens": path.stat().st_size // 2, "sha256": digest(path)}
    index = {"end": vocab.eot_token, "vocab_size": vocab.n_vocab, "vocab_sha256": digest(folder / "vocab.json"), "shards": shards}
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")


def refused(folder, damage):
    """复制一份语料，弄坏一处，看打开时怎么说。

    参数:
        folder (Path): 语料
        damage (callable): 改头一个分片的字节：bytearray → bytearray

    返回:
        str: 报错；没有报错就是空的
    """
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(shutil.copytree(folder, Path(temporary) / "copy", ignore=shutil.ignore_patterns("docs", "work")))
        name = next(name for name in json.loads((copy / "index.json").read_text(encoding="utf-8"))["shards"] if name.startswith("train"))
        (copy / name).write_bytes(damage(bytearray((copy / name).read_bytes())))
        try:
            open_shards(copy, "train", CONTEXT_LENGTH)
            return ""
        except ValueError as error:
            return str(error).replace(str(copy), folder.name)


def flip(data):
    """中间的一个字节，翻转一位。

    参数:
        data (bytearray): 一个分片

    返回:
        bytearray: 长度不变
    """
    data[len(data) // 2] ^= 1
    return data


def vocab_table(text, others):
    """同一段文字，几份词表：只数词元次数的模型，每个词元、每个字节的损失。

    参数:
        text (str): 文字；前九成用来数，后一成用来量
        others (dict): 名字 → 三样：编码的函数、每个词元几个字节 (V,)、词表大小

    返回:
        list[tuple]: 名字、一个词元平均几个字节、每个词元几奈特、每字节几比特
    """
    cut, rows = len(text) * 9 // 10, []
    for name, (encode, lengths) in others.items():
        train, val = np.array(encode(text[:cut])), np.array(encode(text[cut:]))
        counts = np.bincount(train, minlength=len(lengths)) + 1
        rows.append((name, lengths[val].sum().item() / len(val), -np.log(counts[val] / counts.sum()).mean(), unigram_bits([train], [val], lengths)))
    return rows


def experiment(folder):
    """读一轮、断几次、弄坏几次、换几份词表。

    参数:
        folder (Path): 语料
    """
    index, shards = open_shards(folder, "train", CONTEXT_LENGTH)
    print(f"语料　{folder}　{len(shards)} 个训练的分片，{sum(map(len, shards)):,} 个词元")
    epoch = []
    for number, position, window in window_stream(shards, CONTEXT_LENGTH, SEED, 0, 0):
        if number == 1 or len(epoch) == 50_000:
            break
        epoch.append((number, position, window))
    starts = [(window.__array_interface__["data"][0] - shard.__array_interface__["data"][0]) // 2 for _, _, window in epoch for shard in shards if np.shares_memory(window, shard)]
    print(f"① 第 1 轮 {len(epoch):,} 个窗口，头几个从这里开始：{'、'.join(map(str, starts[:6]))}")
    same = True
    for place in np.random.default_rng(1).integers(1, len(epoch), 20):
        again = window_stream(shards, CONTEXT_LENGTH, SEED, *epoch[place - 1][:2])
        same = same and all(next(again)[:2] == old[:2] and np.array_equal(window, old[2]) for old, (_, _, window) in zip(epoch[place : place + 5], window_stream(shards, CONTEXT_LENGTH, SEED, *epoch[place - 1][:2])))
    (_, position), inputs, targets = next_batch(window_stream(shards, CONTEXT_LENGTH, SEED, 0, 0), BATCH_SIZE, torch.device("cpu"))
    print(f"② 一批　输入 {tuple(inputs.shape)}　目标 {tuple(targets.shape)}　走到第 {position} 个")

    said = {"少了最后 100 个字节": refused(folder, lambda data: data[:-100]), "坏了一位": refused(folder, flip)}
    print("③ 弄坏一个分片")
    for name, sentence in said.items():
        print(f"  {name}　{sentence or '没有报错'}")

    vocab = load_vocab(folder / "vocab.json")
    text = vocab.decode(np.concatenate([shard[:300_000] for shard in shards[:3]]).tolist()).replace(END, "\n\n")
    gpt2 = tiktoken.get_encoding("gpt2")
    others = {"字节": (lambda text: list(text.encode()), torch.ones(256))}
    if index["vocab_size"] > 257:  # 自带的小语料就是一个字节一个词元
        others[f"这份语料的 {index['vocab_size']}"] = (vocab.encode_ordinary, token_bytes(vocab, index["vocab_size"]))
    rows = vocab_table(text, others | {"GPT-2 的 50257": (gpt2.encode_ordinary, token_bytes(gpt2, 50257))})
    print("④ 只数词元次数的模型（什么上文也不看）\n  词表　　一个词元几个字节　每个词元几奈特　每字节几比特")
    for name, size, nats, bits in rows:
        print(f"  {name}　{size:10.2f}　{nats:14.3f}　{bits:14.3f}")
    worst, best = max(rows, key=lambda row: row[2]), min(rows, key=lambda row: row[3])
    print(f"所以：每个词元的损失最大的是{worst[0]}，每字节比特最少的是{best[0]}。" + ("同一份！光看每个词元的损失，会把最好的当成最差的。" if worst is best else ""))

    print("\n这个数字对吗？")
    whole = len(epoch) < 50_000
    confirm("一轮里没有一个窗口取了两次" + ("，也没有漏" if whole else ""), len({window.__array_interface__["data"][0] for *_, window in epoch}) == len(epoch) and (not whole or sum(map(len, shards)) // CONTEXT_LENGTH - len(epoch) <= 2 * len(shards)), "洗牌时是有放回地抽的，或分片的次序重复了")
    confirm("随机断 20 次，从断处接着取，窗口都相同", same, "没有跳过取过的，或次序与从哪里断开有关")
    confirm("目标就是输入右移一位", torch.equal(inputs[:, 1:], targets[:, :-1]) and not torch.equal(inputs, targets), "目标没有右移：模型只要抄输入就行，损失很快到 0")
    confirm("短了的、坏了一位的，都不收", all("坏了" in sentence for sentence in said.values()), "只看了长度，或根本没有查")
    confirm("字节的词表，每个词元的损失 ÷ ln 2 就是每字节比特", abs(rows[0][2] / math.log(2) - rows[0][3]) < 1e-9, "除的不是字节数")


def main():
    """读分片。"""
    parser = argparse.ArgumentParser(description="实验　词元分片：怎样读，断了怎样接着读")
    parser.add_argument("--corpus", type=Path, help="exp_corpus_prepare.py 写的文件夹（默认：用自带的短篇做一份极小的）")
    parser.add_argument("--quick", action="store_true", help="与不加时一样：本来就很快")
    args = parser.parse_args()
    folder = args.corpus or OUTPUTS / "corpus_bytes"
    try:
        if args.corpus is None and not (folder / "index.json").exists():
            quick_shards(folder)
        experiment(folder)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
