"""第 2 章 · 实验　BPE 的词表是怎么学出来的？

问题：　从 256 个字节出发，合并多少次，一个汉字才变成一个词元？学几百次，就够中文用了吗？
先猜：　汉字是 3 个字节，合并两次就成一个字；可是几百次合并，够中文用吗？英文呢？（先想 10 秒，再运行）
看点：　① 中文最先学会的不是字，而是许多字共有的头两个字节；合并不认得字，图里还有跨着两个字的词元。
        ② 右图：词元越合并越少，但越来越慢；中文只合并几百次，就比 GPT-2 合并五万次的还省：它的训练文本里几乎没有中文。
动手改：1. --vocab-size 300，再改成 2000：图里那半句话，一个还满是半个字，一个只剩三个词元。没训练过的中文，每个字符从 2.9 个词元
           （不合并）降到 2.0 个（43 次）、0.92 个（默认的 743 次）、0.80 个（1743 次）：后来的一千次，只再省了一成多。
        2. 把 learn_merges 里的 (-counts[pair], pair) 换成 -counts[pair]：次数相同时，谁先出现就先合并谁，结果与朴素版不同，
           最后一条自查变成 ✗；约定取编号小的，各家的实现才学得出同一份词表。
        3. 把 PIECE 换成 regex.compile(r"(?s).+")，词与词之间也能合并：英文先学会的换成了 "e " 和 "d "。

运行：
    python ch02/experiments/exp_bpe_from_scratch.py                       # 图片写到 ch02/outputs/
    python ch02/experiments/exp_bpe_from_scratch.py --text 我的文章.txt   # 用自己的文本训练
    约 6 秒，0.1 GB（2 核 CPU）；编号怎样与 tiktoken 逐个相同、怎样快得像 Rust 写的，见 exp_bpe_fast.py
"""

import argparse
import math
import os
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
import regex  # 随 tiktoken 装好的：标准库的 re 没有 \p{L}（字母）和 \p{N}（数字）
import tiktoken
import zhplot  # noqa: F401　导入它，图上就能写中文

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
END = "<|endoftext|>"

# ---- 文本 → 片段 ----
# 合并只在片段内部进行，片段由 GPT-2 的正则切出：缩写、字母、数字、标点、空白各归各，词前面的一个空格归后面的词。
# 后来的 GPT-4 改了：数字最多三个一段（\p{N}{1,3}），缩写不分大小写。改数字，是因为不限长短，切法就没有规律：
# GPT-2 里 2019 是一个词元，2791 却是 27 和 91，1776 又是 17 和 76。同是四位数，切成几段全看常不常见，模型就难学会加减。
PIECE = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

# ---- 字节 ↔ 编号 ----
# 编号 0–255 是单个字节，次序与 GPT-2 相同：先是 188 个看得见的，再是 68 个看不见的（空格、换行……）。
# 词表文件里，看不见的字节依次写成 256 号以后的字符，所以空格是 Ġ，换行是 Ċ。
VISIBLE = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
BYTE_OF_ID = bytes(VISIBLE + [byte for byte in range(256) if byte not in VISIBLE])
SPELLING = [chr(byte) for byte in VISIBLE] + [chr(256 + i) for i in range(256 - len(VISIBLE))]
ID_OF_BYTE = bytes.maketrans(BYTE_OF_ID, bytes(range(256)))


def count_pieces(text):
    """数一数每种片段出现几次：训练只需要这些次数，不需要原文。片段 → 次数，按第一次出现的先后。"""
    return Counter(PIECE.findall(text))


def to_ids(piece):
    """片段 → 编号：每个字节一个。"""
    return list(piece.encode("utf-8").translate(ID_OF_BYTE))


# ---- 训练 ----


def find_freq_pair(sequences):
    """找出现次数最多的相邻一对；次数相同时取编号小的，这样结果总是确定的。

    参数:
        sequences (list[tuple[list[int], int]]): 每个片段的编号，和它出现的次数

    返回:
        tuple[int, int] 或 None: 一对编号；一对也没有时是 None

    出处: 原书附带材料 ch02/05_bpe-from-scratch 的同名方法
    """
    counts = Counter()
    for ids, times in sequences:
        for pair in zip(ids, ids[1:]):
            counts[pair] += times
    return min(counts, key=lambda pair: (-counts[pair], pair), default=None)


def replace_pair(ids, pair, new_id):
    """把一串编号里的这一对，从左到右都换成新编号。

    参数:
        ids (list[int]): 编号
        pair (tuple[int, int]): 要合并的一对
        new_id (int): 合并成的编号

    返回:
        list[int]: 换过的编号

    示例:
        >>> replace_pair([7, 7, 7], (7, 7), 256)
        [256, 7]
    """
    replaced, i = [], 0
    while i < len(ids):
        if tuple(ids[i : i + 2]) == pair:
            replaced.append(new_id)
            i += 2
        else:
            replaced.append(ids[i])
            i += 1
    return replaced


def learn_merges_naive(sequences, num_merges):
    """训练：数一遍，合并最多的一对；再数一遍，再合并……每合并一次都要把全部文本走一遍。

    参数:
        sequences (list[tuple[list[int], int]]): 每个片段的编号，和它出现的次数
        num_merges (int): 合并几次

    返回:
        list[tuple[int, int]]: 依次合并的对，第 i 个得到编号 256 + i

    出处: Sennrich et al., 2016；minbpe 也是这样写的
    """
    merges = []
    for new_id in range(256, 256 + num_merges):
        pair = find_freq_pair(sequences)
        if pair is None:
            break
        sequences = [(replace_pair(ids, pair, new_id), times) for ids, times in sequences]
        merges.append(pair)
    return merges


def learn_merges(sequences, num_merges):
    """训练，结果与朴素版逐个相同，快几十倍：次数只数一遍，以后每次合并，只改含有这一对的片段。

    参数:
        sequences (list[tuple[list[int], int]]): 每个片段的编号，和它出现的次数
        num_merges (int): 合并几次

    返回:
        list[tuple[int, int]]: 依次合并的对，第 i 个得到编号 256 + i
    """
    words = list(sequences)
    counts, where = Counter(), defaultdict(set)  # 每一对出现几次；出现在哪些片段里
    for i, (ids, times) in enumerate(words):
        for each in zip(ids, ids[1:]):
            counts[each] += times
            where[each].add(i)
    merges = []
    while counts and len(merges) < num_merges:
        pair = min(counts, key=lambda pair: (-counts[pair], pair))
        new_id = 256 + len(merges)
        for i in where.pop(pair):
            ids, times = words[i]
            for each in zip(ids, ids[1:]):  # 这个片段里的对，先全部减掉……
                counts[each] -= times
                if counts[each] <= 0:
                    del counts[each]
            ids = replace_pair(ids, pair, new_id)
            for each in zip(ids, ids[1:]):  # ……换好了再加回来：没变的一减一加，等于没动
                counts[each] += times
                where[each].add(i)
            words[i] = ids, times
        merges.append(pair)
    return merges


class BPETokenizerSimple:
    """字节级 BPE 分词器，方法名与原书附带材料相同。

    参数:
        merges (Iterable[tuple[int, int]]): 依次合并的对，第 i 个得到编号 256 + i；没有就先 train
        specials (Iterable[str]): 特殊词元，编号排在最后

    示例:
        >>> tokenizer = BPETokenizerSimple()
        >>> tokenizer.train("low lower lowest", vocab_size=260)
        >>> tokenizer.decode(tokenizer.encode("低 low")) == "低 low"
        True

    出处: 原书附带材料 ch02/05_bpe-from-scratch（那里按字符训练，没见过的字会出错；这里按字节，什么都能编码）
    """

    def __init__(self, merges=(), specials=()):
        self.bpe_merges = {pair: 256 + i for i, pair in enumerate(merges)}
        spelled, self._bytes = list(SPELLING), [bytes([byte]) for byte in BYTE_OF_ID]
        for left, right in self.bpe_merges:
            spelled.append(spelled[left] + spelled[right])
            self._bytes.append(self._bytes[left] + self._bytes[right])
        self._bytes += [special.encode("utf-8") for special in specials]
        self.vocab = dict(enumerate([*spelled, *specials]))  # 编号 → 写法，空格写成 Ġ
        self.special_tokens = {special: len(spelled) + i for i, special in enumerate(specials)}
        self._cache = {}  # 片段 → 编号：文本里的词大多是重复的，分过一次就记住

    def train(self, text, vocab_size, allowed_special=(END,)):
        """学出合并，直到词表有 vocab_size 个词元，或再也没有可合并的。

        参数:
            text (str): 训练文本
            vocab_size (int): 词表大小：256 个字节 + 合并 + 特殊词元
            allowed_special (Iterable[str]): 特殊词元，不参与合并

        异常:
            ValueError: 词表小得连字节和特殊词元都放不下
        """
        specials = sorted(allowed_special)
        num_merges = vocab_size - 256 - len(specials)
        if num_merges < 0:
            raise ValueError(f"词表大小至少是 {256 + len(specials)}（256 个字节和 {len(specials)} 个特殊词元），不能是 {vocab_size}")
        pieces = Counter()
        for part in re.split("|".join(map(re.escape, specials)), text) if specials else [text]:
            pieces += count_pieces(part)
        self.__init__(self.learn(pieces, num_merges), specials)

    def learn(self, pieces, num_merges):
        """片段和次数 → 依次合并的对。"""
        return learn_merges([(to_ids(piece), times) for piece, times in pieces.items()], num_merges)

    def encode(self, text):
        """文本 → 词元编号；特殊词元也当普通文字。"""
        return [i for piece in PIECE.findall(text) for i in self.tokenize_with_bpe(piece)]

    def tokenize_with_bpe(self, piece):
        """一个片段 → 编号：反复合并编号最小（也就是最早学到）的一对，直到没有可合并的。

        参数:
            piece (str): 片段

        返回:
            list[int]: 编号
        """
        if piece not in self._cache:
            ids = to_ids(piece)
            while len(ids) > 1:
                pair = min(zip(ids, ids[1:]), key=lambda pair: self.bpe_merges.get(pair, math.inf))
                if pair not in self.bpe_merges:
                    break
                ids = replace_pair(ids, pair, self.bpe_merges[pair])
            self._cache[piece] = ids
        return self._cache[piece]

    def decode(self, token_ids):
        """词元编号 → 文本；不成字符的字节变成 �。

        参数:
            token_ids (Iterable[int]): 词元编号

        返回:
            str: 文本

        异常:
            ValueError: 编号不在词表里
        """
        token_ids = list(token_ids)
        wrong = [i for i in token_ids if not 0 <= i < len(self._bytes)]
        if wrong:
            raise ValueError(f"编号 {wrong[0]} 不在词表里，词表是 0 到 {len(self._bytes) - 1}")
        return b"".join(self._bytes[i] for i in token_ids).decode("utf-8", errors="replace")


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


# ---- 实验 ----


def show(piece):
    """词元怎么显示：成字的显示字，不成字的显示十六进制字节。

    参数:
        piece (bytes): 词元的字节

    返回:
        str: 显示用的文字；空格显示成 ·
    """
    try:
        return piece.decode("utf-8").replace(" ", "·").replace("\n", r"\n")
    except UnicodeDecodeError:
        return piece.hex(" ")


def first_merges(tokenizer, merges):
    """只保留前几次合并的分词器：看词表小的时候会怎样，不必重新训练。"""
    return BPETokenizerSimple(list(tokenizer.bpe_merges)[:merges], [END])


def describe(name, tokenizer, merges):
    """打印学到了什么：最先合并的几对，汉字是怎样一步步拼成的。

    参数:
        name (str): 文本的名字
        tokenizer (BPETokenizerSimple): 训练好的分词器
        merges (int): 合并了几次
    """
    tokens = tokenizer._bytes[256 : 256 + merges]
    print(f"  合并 {merges} 次。最先学会的 12 个：{'　'.join(map(show, tokens[:12]))}")
    partial = [token for token in tokens if "\ufffd" in token.decode("utf-8", "replace")]
    chars = [i for i, token in enumerate(tokens) if re.fullmatch("[一-鿿]", token.decode("utf-8", "replace"))]
    words = [token.decode("utf-8") for token in tokens if re.fullmatch("[一-鿿]{2,}", token.decode("utf-8", "replace"))]
    print(f"    不成字的字节 {len(partial)} 个，单个汉字 {len(chars)} 个，两个字以上的中文词 {len(words)} 个{'，如 ' + '、'.join(words[:8]) if words else ''}")
    if chars:
        char = tokens[chars[0]]
        print(f"    第 {chars[0] + 1} 次合并，才得到第一个完整的汉字：{show(char)} = {char.hex(' ')}；许多字的头一两个字节相同，合起来次数更多，所以排在前面")


def draw(tokenizer, sentence, curves, path):
    """画图：左边是一句话随着合并次数变成几个词元，右边是每个字符平均几个词元。

    参数:
        tokenizer (BPETokenizerSimple): 训练好的分词器
        sentence (str): 左边画的句子
        curves (dict): 名字 → 三样：合并次数的列表、每字符词元数的列表、GPT-2 的每字符词元数
        path (Path): 图片写到哪里
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.6), width_ratios=[1.5, 1], layout="constrained")
    total = len(tokenizer.bpe_merges)
    rows = sorted({0, *(round(total * share) for share in (0.05, 0.15, 0.4, 1))})
    size = len(sentence.encode("utf-8"))
    for y, merges in enumerate(rows):
        x, ids = 0, first_merges(tokenizer, merges).encode(sentence)
        for token in (tokenizer._bytes[i] for i in ids):
            text = token.decode("utf-8", "replace")
            color = "0.85" if "\ufffd" in text else "#9ecae1" if len(text) == 1 else "#fdae6b"
            left.add_patch(plt.Rectangle((x + 0.06, -y - 0.36), len(token) - 0.12, 0.72, color=color))
            left.text(x + len(token) / 2, -y, show(token).replace(" ", "\n"), ha="center", va="center", fontsize=8 if "\ufffd" in text else 12)
            x += len(token)
        left.text(size + 0.4, -y, f"{len(ids)} 个", va="center")
    left.set(xlim=(-0.2, size + 2.6), ylim=(-len(rows) + 0.4, 0.6), xticks=[], yticks=[-y for y in range(len(rows))])
    left.set_yticklabels([f"合并 {merges} 次" for merges in rows])
    left.set_title("同一句话，合并得越多，词元越少\n灰：半个字　蓝：一个字符　橙：几个字符", linespacing=1.5)
    left.spines[:].set_visible(False)
    left.tick_params(length=0)
    for i, (name, (merges, ratios, gpt2)) in enumerate(curves.items()):
        right.plot(merges, ratios, marker="o", color=f"C{i}", label=f"{name}：自己训练")
        right.axhline(gpt2, linestyle="--", color=f"C{i}", label=f"{name}：GPT-2 的词表（5 万次合并）")
    right.set(ylim=(0, None), xlabel="合并次数", ylabel="每个字符几个词元")
    right.set_title("没训练过的文本上，每个字符几个词元")
    right.legend(fontsize=9)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight", pad_inches=0.15)
    plt.close(figure)


def main():
    """读 GPT-2 的词表、训练自己的词表、画图。"""
    parser = argparse.ArgumentParser(description="实验　从头实现 BPE")
    parser.add_argument("--text", help="用来训练的文本，UTF-8 编码（默认：自带的中文、英文短篇各训练一个）")
    parser.add_argument("--vocab-size", type=int, default=1000, help="词表大小，257 到 50000（默认：1000）")
    parser.add_argument("--quick", action="store_true", help="词表大小改成 400")
    args = parser.parse_args()
    if not 257 <= args.vocab_size <= 50000:
        parser.error(f"--vocab-size 应在 257 到 50000 之间，不能是 {args.vocab_size}")
    vocab_size = min(args.vocab_size, 400) if args.quick else args.vocab_size
    try:
        sources = {"自己的文本": Path(args.text)} if args.text else {"中文": find_data("story-zh.txt"), "英文": find_data("the-verdict.txt", "story-en.txt")}
        texts = {name: read_text(path) for name, path in sources.items()}
    except (ValueError, OSError) as error:
        parser.error(str(error))

    gpt2 = tiktoken.get_encoding("gpt2")
    print(f"自己训练，词表大小 {vocab_size}：用前八成训练，后两成留着检验")
    curves, tokenizers, restored = {}, {}, True
    for name, text in texts.items():
        print(f"\n{name}　{sources[name]}")
        cut = len(text) * 4 // 5
        tokenizer = tokenizers[name] = BPETokenizerSimple()
        tokenizer.train(text[:cut], vocab_size)
        merges = len(tokenizer.bpe_merges)
        describe(name, tokenizer, merges)
        points = sorted({round(merges * share) for share in (0, 0.03, 0.1, 0.2, 0.4, 0.7, 1)})
        ratios = [len(first_merges(tokenizer, k).encode(text[cut:])) / len(text[cut:]) for k in points]
        curves[name] = points, ratios, len(gpt2.encode_ordinary(text[cut:])) / len(text[cut:])
        restored = restored and tokenizer.decode(tokenizer.encode(text)) == text
        print(f"    没训练过的那两成：每个字符 {ratios[0]:.2f} → {ratios[-1]:.2f} 个词元；GPT-2 的词表要 {curves[name][2]:.2f} 个")

    sample = [(to_ids(piece), times) for piece, times in count_pieces(list(texts.values())[-1][:3000]).items()]
    same = learn_merges(sample, 100) == learn_merges_naive(sample, 100)

    name = next(iter(texts))
    clauses = [clause for clause in re.split("[，。！？、：“”\n]", texts[name][len(texts[name]) * 4 // 5 :]) if 5 <= len(clause) <= 12] or [texts[name][:12]]
    sentence = min(clauses, key=lambda clause: len(tokenizers[name].encode(clause)) / len(clause))  # 挑合并得最多的半句来画，变化看得最清楚
    draw(tokenizers[name], sentence, curves, OUTPUTS / "bpe_from_scratch.png")
    print(f"\n图已写到 {OUTPUTS / 'bpe_from_scratch.png'}")
    for name, (points, ratios, theirs) in curves.items():
        verdict = "已经比它省" if ratios[-1] < theirs else "还不如它"
        print(f"所以：{name}只合并 {points[-1]} 次，没训练过的两成每个字符 {ratios[-1]:.2f} 个词元；GPT-2 合并了 5 万次，要 {theirs:.2f} 个，{verdict}。")
    print("词表合不合用，看训练它的语料像不像要编码的文本。（这里的两成与训练的八成出自同一篇，人名地名都一样，比真正的新文章占便宜。）")

    print("\n这个数字对吗？")
    confirm("编码再解码，一个字符不差", restored, "把词元一个一个分开解码了")
    confirm("每个字符的词元数随合并只减不增", all(a >= b for _, ratios, _ in curves.values() for a, b in zip(ratios, ratios[1:])), "合并时漏了，或编码没按先后")
    confirm("只改受影响的，与每次从头数的朴素版，合并逐个相同", same, "换掉的片段，旧的对没有减掉，或新的对没有加上")


if __name__ == "__main__":
    main()
