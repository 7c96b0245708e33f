"""第 2 章 · 实验　BPE 的词表是怎么学出来的，能学多快？

问题：　从 256 个字节出发，合并多少次，一个汉字才变成一个词元？纯 Python 写的训练，能不能和 Rust 写的一样快？
先猜：　汉字是 3 个字节，合并两次就成一个字；可是几百次合并，够中文用吗？英文呢？（先想 10 秒，再运行）
看点：　① 中文最先学会的不是字，而是许多字共有的头两个字节；合并不认得字，图里还有跨着两个字的词元。
        ② 朴素版到快速版，一共三步，每一步各快多少。③ 编号与 tiktoken、合并与 tokenizers 逐个相同。
动手改：1. --vocab-size 改成 300 和 5000：图里那半句话，一个还满是半个字，一个整句成了一个词元；
           中文合并到 4238 次就没有可合并的了；没训练过的文本也还在省，只是越来越慢。
        2. 把 learn_merges 里 delta[right + after] -= n 那一行注释掉：没了的对还算数，合并错了，最后一条自查变成 ✗。
        3. 把 WORD 和 PIECE 都换成 re.compile(r"(?s).+")，词与词之间也能合并：英文先学会的换成了 "e " 和 "d "，
           第一条自查变成 ✗，因为片段切得和 GPT-2 不同了。

运行：
    python ch02/experiments/exp_bpe_from_scratch.py                       # 图片写到 ch02/outputs/
    python ch02/experiments/exp_bpe_from_scratch.py --text 我的文章.txt   # 用自己的文本训练
    python ch02/experiments/exp_bpe_from_scratch.py --bench               # 速度表，与 tokenizers、tiktoken 比
    约 4 秒，0.1 GB；--bench 约 1 分钟，1.2 GB（2 核 CPU）
"""

import argparse
import hashlib
import heapq
import json
import os
import re
import statistics
import sys
import sysconfig
import time
import unicodedata
from collections import Counter, defaultdict
from itertools import chain
from operator import add
from pathlib import Path

import matplotlib.pyplot as plt
import tiktoken
import zhplot  # noqa: F401　导入它，图上就能写中文

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
END = "<|endoftext|>"
BENCH_SIZES, BENCH_VOCABS = (1_000_000, 10_000_000), (1000, 4000)  # 测速：两段文本各几个字符，词表各多大

# ---- 文本 → 片段 ----
# 合并只在片段内部进行，片段由 GPT-2 的正则切出：缩写、字母、数字、标点、空白各归各，词前面的一个空格归后面的词。
#     's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
# 标准库的 re 没有 \p{L}（字母）和 \p{N}（数字）。[^\W\d_] 与 \d 只在一千多个字符上和它们不同，如 ²、½、Ⅳ：碰到时才用精确的写法，它慢 5 倍。
ODD_NUMBERS = "".join(char for char in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(char) in ("Nl", "No"))
ODD = frozenset(ODD_NUMBERS)
# Python 的 \s 比 Unicode 多认 4 个控制字符（\x1c–\x1f），所以空白要一个个列出来。
SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
PATTERN = rf"'(?:[sdmt]|ll|ve|re)| ?[^\W\d_%s]+| ?[\d%s]+| ?(?:[^{SPACE}\w]|_)+|[{SPACE}]+(?![^{SPACE}])|[{SPACE}]+"
PIECE = re.compile(PATTERN % ("", ""))
PIECE_EXACT = re.compile(PATTERN % (ODD_NUMBERS, ODD_NUMBERS))
# 先按空白粗切成词，再把不同的词细切成片段：结果一样，但上面那个复杂的正则只要用在每个不同的词上一次。
WORD = re.compile(rf" ?[^{SPACE}]+|[{SPACE}]+(?![^{SPACE}])|[{SPACE}]+")

# ---- 字节 ↔ 编号 ----
# 编号 0–255 是单个字节，次序与 GPT-2 相同：先是 188 个看得见的，再是 68 个看不见的（空格、换行……）。
# 词表文件里，看不见的字节依次写成 256 号以后的字符，所以空格是 Ġ，换行是 Ċ。
VISIBLE = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
BYTE_OF_ID = bytes(VISIBLE + [byte for byte in range(256) if byte not in VISIBLE])
SPELLING = [chr(byte) for byte in VISIBLE] + [chr(256 + i) for i in range(256 - len(VISIBLE))]
ID_OF_BYTE = bytes.maketrans(BYTE_OF_ID, bytes(range(256)))


def split_word(word):
    """一个词 → 片段，与 GPT-2 的切法相同。

    参数:
        word (str): WORD 切出的一个词

    返回:
        list[str]: 片段，接起来就是原来的词
    """
    return (PIECE if word.isascii() or ODD.isdisjoint(word) else PIECE_EXACT).findall(word)


def count_pieces(text):
    """数一数每种片段出现几次：训练只需要这些次数，不需要原文。

    参数:
        text (str): 训练文本

    返回:
        dict[str, int]: 片段 → 次数，按第一次出现的先后
    """
    pieces = defaultdict(int)
    for word, times in Counter(WORD.findall(text)).items():
        for piece in split_word(word):
            pieces[piece] += times
    return pieces


# ---- 一、朴素版：照着定义写 ----


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


# ---- 二、快速版：只算变了的地方 ----


def to_chars(piece):
    """片段 → 字符串，每个字符的码位就是一个编号：于是"找一对、换掉"可以用 str.split 和 join，它们是 C 写的。

    参数:
        piece (str): 片段

    返回:
        str: 长度等于字节数，每个字符的码位是一个编号
    """
    return piece.encode("utf-8").translate(ID_OF_BYTE).decode("latin-1")


def learn_merges(pieces, num_merges, heap=True):
    """训练，快速版：结果与朴素版逐个相同。

    参数:
        pieces (dict[str, int]): 片段 → 次数
        num_merges (int): 合并几次
        heap (bool): 为 False 时不用堆，每次都把所有的对比一遍，用来看堆省了多少

    返回:
        list[tuple[int, int]]: 依次合并的对，第 i 个得到编号 256 + i
    """
    words, times = [to_chars(piece) for piece in pieces], list(pieces.values())
    counts = defaultdict(int)  # 每一对的次数。只数一遍，以后只改受影响的几项
    where = defaultdict(list)  # 每一对在哪些词里出现过：合并时只看这些词
    for i, word in enumerate(words):
        for pair in map(add, word, word[1:]):  # "abc" → "ab"、"bc"
            counts[pair] += times[i]
            where[pair].append(i)
    # 惰性堆：次数变了就再放一个新的进去，旧的留着；取出来时次数对不上，就知道它过期了，扔掉。
    # 元组从左到右比大小：次数多的先出来；次数相同时比字符，也就是编号小的先出来。
    queue = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(queue)
    merges = []
    while counts and len(merges) < num_merges:
        if heap:
            count, pair = heapq.heappop(queue)
            if counts.get(pair) != -count:
                continue
        else:
            pair = min(counts, key=lambda pair: (-counts[pair], pair))
        left, right = pair
        merges.append((ord(left), ord(right)))
        new = chr(255 + len(merges))
        delta = defaultdict(int)  # 这次合并让哪些对的次数变了多少
        for i in set(where.pop(pair)):
            n = times[i]
            parts = words[i].split(pair)  # 每两段之间有一个 pair；只有一段，说明这个词里的 pair 已经被别的合并吃掉了
            for j in range(len(parts) - 1):
                # "x left right y" 变成 "x new y"：x left 和 right y 各少一次，x new 和 new y 各多一次。
                before, after = parts[j][-1:], parts[j + 1][:1]
                if before or j:  # 前一段是空的，说明左边紧挨着刚合并出的 new，它原来的末尾是 right
                    delta[(before or right) + left] -= n
                    fresh = (before or new) + new
                    delta[fresh] += n
                    where[fresh].append(i)
                if after:
                    delta[right + after] -= n
                    fresh = new + after
                    delta[fresh] += n
                    where[fresh].append(i)
            words[i] = new.join(parts)
        delta.pop(pair, None)
        del counts[pair]
        for pair, change in delta.items():
            counts[pair] += change
            if counts[pair] > 0:
                heapq.heappush(queue, (-counts[pair], pair))
            else:
                del counts[pair]
    return merges


class IdCache(dict):
    """词 → 编号的缓存：查得到就是一次字典查找，查不到才分词。文本里的词大多是重复的，所以越往后越快。

    参数:
        tokenize (callable): 片段 → 编号的元组
    """

    def __init__(self, tokenize):
        super().__init__()
        self.tokenize = tokenize

    def __missing__(self, word):
        """字典里没有这个词时，Python 会来调用它。

        参数:
            word (str): 一个词，或一个片段

        返回:
            tuple[int]: 编号
        """
        pieces = split_word(word)
        ids = self.tokenize(word) if len(pieces) == 1 else tuple(chain.from_iterable(map(self.__getitem__, pieces)))
        if len(self) < 500_000:  # 不设上限，内存会随文本一直涨
            self[word] = ids
        return ids


class BPETokenizerSimple:
    """字节级 BPE 分词器，方法名与原书附带材料相同；读入 OpenAI 的词表后，编号与 tiktoken 的 gpt2 相同。

    示例:
        >>> tokenizer = BPETokenizerSimple()
        >>> tokenizer.train("low lower lowest", vocab_size=260)
        >>> tokenizer.decode(tokenizer.encode("低 low")) == "低 low"
        True

    出处: 原书附带材料 ch02/05_bpe-from-scratch（那里按字符训练，没见过的字会出错；这里按字节，什么都能编码）
    """

    def __init__(self):
        self._set_merges([], [])

    def _set_merges(self, merges, specials):
        """由合并列表得出其余的一切。

        参数:
            merges (list[tuple[int, int]]): 依次合并的对，第 i 个得到编号 256 + i
            specials (list[str]): 特殊词元，编号排在最后
        """
        self.bpe_merges = {pair: 256 + i for i, pair in enumerate(merges)}
        spelled, self._bytes = list(SPELLING), [bytes([byte]) for byte in BYTE_OF_ID]
        for left, right in merges:
            spelled.append(spelled[left] + spelled[right])
            self._bytes.append(self._bytes[left] + self._bytes[right])
        self._bytes += [special.encode("utf-8") for special in specials]
        self.vocab = dict(enumerate(spelled + specials))  # 编号 → 写法，空格写成 Ġ
        self.inverse_vocab = {token: i for i, token in self.vocab.items()}
        self.special_tokens = {special: len(spelled) + i for i, special in enumerate(specials)}
        self._merged = {chr(left) + chr(right): chr(new_id) for (left, right), new_id in self.bpe_merges.items()}
        self._parts = {new: pair for pair, new in self._merged.items()}
        self._whole = {token.translate(ID_OF_BYTE).decode("latin-1"): (i,) for i, token in enumerate(self._bytes[: len(spelled)])}
        self._cache = IdCache(self.tokenize_with_bpe)

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
        pieces = defaultdict(int)
        for part in re.split("|".join(map(re.escape, specials)), text) if specials else [text]:
            for piece, times in count_pieces(part).items():
                pieces[piece] += times
        self._set_merges(learn_merges(pieces, num_merges), specials)

    def encode(self, text, allowed_special=None):
        """文本 → 词元编号。

        参数:
            text (str): 任意文本
            allowed_special (Iterable[str] 或 None): 文本里的这些字当作特殊词元；None 表示全当普通文字

        返回:
            list[int]: 词元编号

        异常:
            ValueError: 给了 allowed_special，文本里却有不在其中的特殊词元
        """
        if not allowed_special:
            return list(chain.from_iterable(map(self._cache.__getitem__, WORD.findall(text))))
        refused = [special for special in self.special_tokens if special in text and special not in allowed_special]
        if refused:
            raise ValueError(f"文本里有不允许的特殊词元 {refused}：把它加进 allowed_special，或者不给 allowed_special，当普通文字")
        ids = []
        # 加了括号，re.split 会把分隔符也留在结果里。
        for part in re.split(f"({'|'.join(map(re.escape, self.special_tokens))})", text) if self.special_tokens else [text]:
            ids += [self.special_tokens[part]] if part in self.special_tokens else self.encode(part)
        return ids

    def tokenize_with_bpe(self, piece):
        """一个片段 → 编号：反复合并编号最小（也就是最早学到）的一对，直到没有可合并的。

        参数:
            piece (str): 片段

        返回:
            tuple[int]: 编号
        """
        word = to_chars(piece)
        if word in self._whole:  # 整个片段就是一个词元：合并下去一定得到它，不必一步步来
            return self._whole[word]
        while True:
            # 查每一对合并成谁，取最小的：字符按码位比大小，就是按编号比大小。filter(None, …) 去掉查不到的。
            new = min(filter(None, map(self._merged.get, map(add, word, word[1:]))), default=None)
            if new is None:
                return tuple(map(ord, word))
            word = word.replace(self._parts[new], new)

    def decode(self, token_ids):
        """词元编号 → 文本。

        参数:
            token_ids (Iterable[int]): 词元编号

        返回:
            str: 文本；不成字符的字节变成 �

        异常:
            ValueError: 编号不在词表里
        """
        token_ids = list(token_ids)
        wrong = [i for i in token_ids if not 0 <= i < len(self._bytes)]
        if wrong:
            raise ValueError(f"编号 {wrong[0]} 不在词表里，词表是 0 到 {len(self._bytes) - 1}")
        return b"".join(self._bytes[i] for i in token_ids).decode("utf-8", errors="replace")

    def save_vocab_and_merges(self, vocab_path, bpe_merges_path):
        """存成 OpenAI 的格式（encoder.json 与 vocab.bpe），tiktoken 和 transformers 也读得了。

        参数:
            vocab_path (str 或 Path): 词表，写法 → 编号
            bpe_merges_path (str 或 Path): 合并，一行一对
        """
        lines = ["#version: 0.2", *(f"{self.vocab[left]} {self.vocab[right]}" for left, right in self.bpe_merges), ""]
        for path, content in ((vocab_path, json.dumps(self.inverse_vocab, ensure_ascii=False)), (bpe_merges_path, "\n".join(lines))):
            part = Path(f"{path}.part")  # 先写到临时文件再改名：中途断电，也不会留下半个词表
            part.write_text(content, encoding="utf-8", newline="\n")
            os.replace(part, path)

    def load_vocab_and_merges(self, vocab_path, bpe_merges_path):
        """读入 encoder.json 与 vocab.bpe。

        参数:
            vocab_path (str 或 Path): 词表
            bpe_merges_path (str 或 Path): 合并

        异常:
            ValueError: 文件坏了，或不是这样编排的词表
        """
        try:
            vocab = json.loads(Path(vocab_path).read_text(encoding="utf-8"))
            lines = Path(bpe_merges_path).read_text(encoding="utf-8").split("\n")
            merges = [tuple(vocab[token] for token in line.split(" ")) for line in lines if line and not line.startswith("#version")]
            tokenizer = BPETokenizerSimple()
            tokenizer._set_merges(merges, sorted(vocab, key=vocab.get)[256 + len(merges) :])
            if tokenizer.inverse_vocab != vocab:
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise ValueError(f"{vocab_path} 与 {bpe_merges_path} 对不上，或者坏了：前 256 个应是单个字节，接着按合并的先后，最后是特殊词元") from None
        self.__dict__ = tokenizer.__dict__

    # OpenAI 的文件就是这个格式，原书另有一个方法读它。
    load_vocab_and_merges_from_openai = load_vocab_and_merges


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


# ---- 三、实验 ----

# 前导空格、连续空格、换行、缩写、没见过的词、表情、全角空格、上标数字、组合字符、控制字符：别的实现在这些地方出过错。
HARD = ["Hello,  world", "   three", "tabs\t\tand\n\n  lines \n", "I'm we'll I'M", "Akwirw ier"]
HARD += ["今天　天气²很好Ⅳ", "👍🏽 café café", "\x1c x\x85y\xa0", f"a{END}b{END}"]


def find_gpt2_files():
    """OpenAI 的两个词表文件，就是 tiktoken 要用的那两个：它以下载地址的 SHA-1 作文件名，这里照它的规矩算。

    返回:
        list[Path]: encoder.json 与 vocab.bpe
    """
    address = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
    return [find_data("tiktoken") / hashlib.sha1(f"{address}{name}".encode()).hexdigest() for name in ("encoder.json", "vocab.bpe")]


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


def first_merges(tokenizer, merges=None):
    """只保留前几次合并的分词器：看词表小的时候会怎样，不必重新训练。

    参数:
        tokenizer (BPETokenizerSimple): 训练好的分词器
        merges (int 或 None): 保留几次，None 表示全部

    返回:
        BPETokenizerSimple: 新的分词器
    """
    smaller = BPETokenizerSimple()
    smaller._set_merges(list(tokenizer.bpe_merges)[:merges], [END])
    return smaller


def describe(name, tokenizer, merges):
    """打印学到了什么：最先合并的几对，汉字是怎样一步步拼成的。

    参数:
        name (str): 文本的名字
        tokenizer (BPETokenizerSimple): 训练好的分词器
        merges (int): 合并了几次
    """
    tokens = tokenizer._bytes[256 : 256 + merges]
    print(f"\n  【{name}】合并 {merges} 次。最先学会的 12 个：{'　'.join(map(show, tokens[:12]))}")
    partial = [token for token in tokens if "\ufffd" in token.decode("utf-8", "replace")]
    chars = [i for i, token in enumerate(tokens) if re.fullmatch("[一-鿿]", token.decode("utf-8", "replace"))]
    words = [token.decode("utf-8") for token in tokens if re.fullmatch("[一-鿿]{2,}", token.decode("utf-8", "replace"))]
    print(f"    不成字的字节 {len(partial)} 个，单个汉字 {len(chars)} 个，两个字以上的中文词 {len(words)} 个{'，如 ' + '、'.join(words[:8]) if words else ''}")
    if chars:
        char = tokens[chars[0]]
        print(f"    第 {chars[0] + 1} 次合并，才得到第一个完整的汉字：{show(char)} = {char.hex(' ')}；许多字的头一两个字节相同，合起来次数更多，所以排在前面")


def ladder(text, num_merges):
    """速度的阶梯：从朴素版到快速版，一次只改一样，结果应当完全相同。

    参数:
        text (str): 训练文本
        num_merges (int): 合并几次

    返回:
        tuple[list[float], bool]: 每一步的秒数；各步的合并是否都相同
    """
    pieces = count_pieces(text)
    every = [(list(map(ord, to_chars(piece))), 1) for word in WORD.findall(text) for piece in split_word(word)]
    once = [(list(map(ord, to_chars(piece))), times) for piece, times in pieces.items()]
    steps = [
        (f"① 朴素版：{len(every):,} 个片段，每个都数、都改", lambda: learn_merges_naive(every, num_merges)),
        (f"② 相同的片段只存一份，记下次数：{len(once):,} 个", lambda: learn_merges_naive(once, num_merges)),
        ("③ 每次只改受影响的那几对的次数，只看含有它的词", lambda: learn_merges(pieces, num_merges, heap=False)),
        ("④ 用堆找最多的一对，不再每次都比一遍", lambda: learn_merges(pieces, num_merges)),
    ]
    seconds, results = [], []
    print(f"\n三、训练能快多少？　{len(text):,} 个字符，合并 {num_merges} 次")
    for title, step in steps:
        start = time.perf_counter()
        results.append(step())
        seconds.append(time.perf_counter() - start)
        faster = f"比上一步快 {seconds[-2] / seconds[-1]:.1f} 倍" if len(seconds) > 1 else ""
        print(f"  {seconds[-1]:8.3f} 秒　{title}　{faster}")
    print(f"  从头到尾快了 {seconds[0] / seconds[-1]:.0f} 倍；文本越长、合并越多，差得越远")
    return seconds, all(result == results[0] for result in results)


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


# ---- 四、速度表 ----


def bench_text(text, size):
    """测速用的文本：给了 --text 就用它，否则用 Python 自带的标准库源码（不含测试），每台电脑上都有，不必下载。

    参数:
        text (str 或 None): --text 的内容
        size (int): 要几个字符

    返回:
        str: 文本；凑不够时短一些
    """
    if text is None:
        library = Path(sysconfig.get_paths()["stdlib"])
        files = sorted(path for path in library.rglob("*.py") if not {"site-packages", "test", "tests"} & set(path.parts))
        text = "".join(path.read_text(encoding="utf-8", errors="ignore") for path in files)
    return text[:size]


def median_seconds(candidates, runs):
    """轮流运行每个候选，取各自的中位数：轮流，是为了让机器忽快忽慢时大家一起受影响。

    参数:
        candidates (dict): 名字 → 函数和它的参数
        runs (int): 每个运行几遍

    返回:
        dict[str, float]: 名字 → 秒
    """
    times = {name: [] for name in candidates}
    for _ in range(runs):
        for name, (work, *args) in candidates.items():
            start = time.perf_counter()
            work(*args)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def encode_naive(tokenizer, text):
    """朴素的编码，minbpe 的算法：每个片段从头合并，不缓存。

    参数:
        tokenizer (BPETokenizerSimple): 分词器
        text (str): 文本

    返回:
        list[int]: 词元编号
    """
    result = []
    for piece in (piece for word in WORD.findall(text) for piece in split_word(word)):
        ids = list(map(ord, to_chars(piece)))
        while len(ids) > 1:
            pair = min(zip(ids, ids[1:]), key=lambda pair: tokenizer.bpe_merges.get(pair, float("inf")))
            if pair not in tokenizer.bpe_merges:
                break
            ids = replace_pair(ids, pair, tokenizer.bpe_merges[pair])
        result += ids
    return result


def bench(text, gpt2):
    """打印两张速度表：训练和编码，各与别人的实现轮流运行、取中位数。

    参数:
        text (str 或 None): --text 的内容
        gpt2 (BPETokenizerSimple): 读入了 GPT-2 词表的分词器

    返回:
        bool: 合并、编号是否都与别人的相同
    """
    try:
        import tokenizers as peer  # 别人的实现，只为比较，没有装也行
    except ImportError:
        peer = None
        print("没有装 Hugging Face 的 tokenizers，表里就没有它：想比较，请 pip install tokenizers")
    same = True

    def train_peer(documents, vocab_size):
        model = peer.Tokenizer(peer.models.BPE())
        model.pre_tokenizer = peer.pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = peer.pre_tokenizers.ByteLevel.alphabet()
        model.train_from_iterator(documents, peer.trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, initial_alphabet=alphabet))
        return [tuple(pair) for pair in json.loads(model.to_str())["model"]["merges"]]

    print("\n训练（秒，越少越好）　tokenizers 是 Rust 写的，按行给它最快；朴素版由最先的 2 次合并推算，越往后片段越短，实际会少一些")
    for size, runs in zip(BENCH_SIZES, (5, 3)):
        sample = bench_text(text, size)
        if len(sample) < size:
            print(f"  文本只有 {len(sample):,} 个字符，跳过 {size / 1e6:g} MB 这一行")
            continue
        lines = sample.splitlines(keepends=True)
        slow = None
        if size == BENCH_SIZES[0]:
            every = [(list(map(ord, to_chars(piece))), 1) for word in WORD.findall(sample) for piece in split_word(word)]
            slow = median_seconds({"朴素版": (learn_merges_naive, every, 2)}, 1)["朴素版"] / 2
        theirs = train_peer([sample], max(BENCH_VOCABS)) if peer else None
        for vocab_size in BENCH_VOCABS:
            ours = BPETokenizerSimple()
            candidates = {"本脚本": (ours.train, sample, vocab_size, ())}
            if peer:
                candidates["tokenizers"] = (train_peer, lines, vocab_size)
            seconds = median_seconds(candidates, runs)
            row = f"  {size / 1e6:2g} MB，词表 {vocab_size}　本脚本 {seconds['本脚本']:.2f}"
            if peer:
                merges = [(ours.vocab[a], ours.vocab[b]) for a, b in ours.bpe_merges]
                equal = sum(a == b for a, b in zip(merges, theirs))
                same = same and equal == len(merges) == vocab_size - 256
                row += f"　tokenizers {seconds['tokenizers']:.2f}，速度是它的 {seconds['tokenizers'] / seconds['本脚本']:.2f} 倍，合并相同 {equal}/{vocab_size - 256}"
            print(row + (f"　朴素版 {slow * (vocab_size - 256):.0f}" if slow else ""), flush=True)

    print("\n编码（MB/s，越多越好）　GPT-2 的词表；冷：缓存是空的；热：同样的文本第二遍")
    tiktoken_gpt2 = tiktoken.get_encoding("gpt2")
    if peer:
        vocab_path, merges_path = map(str, find_gpt2_files())
        model = peer.Tokenizer(peer.models.BPE.from_file(vocab_path, merges_path))
        model.pre_tokenizer = peer.pre_tokenizers.ByteLevel(add_prefix_space=False)

    def cold(sample):
        gpt2._cache.clear()
        return gpt2.encode(sample)

    for size, runs in zip(BENCH_SIZES, (5, 3)):
        sample = bench_text(text, size)
        if len(sample) < size:
            continue
        lines = sample.splitlines(keepends=True)
        candidates = {"本脚本（冷）": (cold, sample), "本脚本（热）": (gpt2.encode, sample), "tiktoken": (tiktoken_gpt2.encode_ordinary, sample)}
        if peer and size == BENCH_SIZES[0]:
            candidates |= {"tokenizers": (model.encode, sample), "tokenizers（按行，多核）": (model.encode_batch_fast, lines)}
        rates = {name: len(sample.encode()) / 1e6 / seconds for name, seconds in median_seconds(candidates, runs).items()}
        if size == BENCH_SIZES[0]:
            part = sample[:100_000]
            rates["朴素版（minbpe 的算法）"] = len(part.encode()) / 1e6 / median_seconds({"": (encode_naive, gpt2, part)}, 3)[""]
        same = same and gpt2.encode(sample) == tiktoken_gpt2.encode_ordinary(sample)
        print(f"  {size / 1e6:2g} MB　" + "　".join(f"{name} {rate:.1f}" for name, rate in rates.items()), flush=True)
    return same


def main():
    """读 GPT-2 的词表、训练自己的词表、爬速度的阶梯、画图。"""
    parser = argparse.ArgumentParser(description="实验　从头实现 BPE")
    parser.add_argument("--text", help="用来训练的文本，UTF-8 编码（默认：自带的中文、英文短篇各训练一个）")
    parser.add_argument("--vocab-size", type=int, default=1000, help="词表大小，257 到 50000（默认：1000）")
    parser.add_argument("--quick", action="store_true", help="速度的阶梯只合并 60 次")
    parser.add_argument("--bench", action="store_true", help="只打印速度表，约 1 分钟")
    args = parser.parse_args()
    if not 257 <= args.vocab_size <= 50000:
        parser.error(f"--vocab-size 应在 257 到 50000 之间，不能是 {args.vocab_size}")
    try:
        sources = {"自己的文本": Path(args.text)} if args.text else {"中文": find_data("story-zh.txt"), "英文": find_data("the-verdict.txt", "story-en.txt")}
        texts = {name: read_text(path) for name, path in sources.items()}
        gpt2, official = BPETokenizerSimple(), tiktoken.get_encoding("gpt2")
        gpt2.load_vocab_and_merges_from_openai(*find_gpt2_files())
    except (ValueError, OSError) as error:
        parser.error(str(error))

    if args.bench:
        same = bench(texts["自己的文本"] if args.text else None, gpt2)
        print("\n这个数字对吗？")
        confirm("合并与 tokenizers 逐个相同，编号与 tiktoken 逐个相同", same, "次数相同时没有取编号小的，或片段切得不一样")
        return

    print(f"一、读入 OpenAI 的词表　{len(gpt2.vocab)} 个词元，{len(gpt2.bpe_merges)} 次合并")
    for text in HARD[:4]:
        print(f"  {text!r} → {gpt2.encode(text)}")
    equal = all(gpt2.encode(text, {END}) == official.encode(text, allowed_special={END}) for text in [*HARD, *texts.values()])

    print(f"\n二、自己训练，词表大小 {args.vocab_size}：用前八成训练，后两成留着检验")
    curves, tokenizers, restored = {}, {}, True
    for name, text in texts.items():
        print(f"  {name}　{sources[name]}")
        cut = len(text) * 4 // 5
        tokenizer = tokenizers[name] = BPETokenizerSimple()
        tokenizer.train(text[:cut], args.vocab_size)
        merges = len(tokenizer.bpe_merges)
        describe(name, tokenizer, merges)
        points = sorted({round(merges * share) for share in (0, 0.03, 0.1, 0.2, 0.4, 0.7, 1)})
        ratios = [len(first_merges(tokenizer, k).encode(text[cut:])) / len(text[cut:]) for k in points]
        curves[name] = points, ratios, len(gpt2.encode(text[cut:])) / len(text[cut:])
        restored = restored and tokenizer.decode(tokenizer.encode(text)) == text
        print(f"    没训练过的那两成：每个字符 {ratios[0]:.2f} → {ratios[-1]:.2f} 个词元；GPT-2 的词表要 {curves[name][2]:.2f} 个\n")

    _, same = ladder(list(texts.values())[-1][:20_000], 60 if args.quick else min(args.vocab_size - 257, 300))

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
    confirm("读入 GPT-2 的词表，编号与 tiktoken 逐个相同（难处理的文字和上面的文本）", equal, "片段切错了，或没有先合并编号最小的")
    confirm("编码再解码，一个字符不差", restored, "把词元一个一个分开解码了")
    confirm("每个字符的词元数随合并只减不增", all(a >= b for _, ratios, _ in curves.values() for a, b in zip(ratios, ratios[1:])), "合并时漏了，或编码没按先后")
    confirm("阶梯的四步，合并逐个相同", same, "次数改错了，或该放进堆里的没有放")


if __name__ == "__main__":
    main()
