"""第 2 章 · 实验　纯 Python 的 BPE，能和 Rust 写的一样准、一样快吗？

问题：　从 exp_bpe_from_scratch.py 的写法出发，一次只改一样，训练能快多少倍？编号能与 tiktoken 逐个相同吗？
先猜：　Rust 比 Python 快几十倍。不换语言，只换做法，追得上吗？最有用的会是哪一步？（先想 10 秒，再运行）
看点：　① 阶梯上的每一步，合并与上一步逐个相同，快的是做法；② 读入 OpenAI 的词表，编号与 tiktoken 逐个相同：
        难的不是合并，是正则里那些少见的空白和数字；③ --bench：与 tokenizers、tiktoken（都是 Rust 写的）轮流比。
动手改：1. 把 learn_merges_fast 里 delta[right + after] -= n 那一行注释掉：没了的对还算数，合并错了，最后一条自查变成 ✗。
        2. 把 WORD 和 PIECE 都换成 re.compile(r"(?s).+")：片段切得和 GPT-2 不同了，第一条自查变成 ✗。
        3. 把 tokenize_with_bpe 里 if word in self._whole 那两行去掉：编号一个也不变。它只是捷径，从字节一步步合并，得到的是同一个词元。

运行：
    python ch02/experiments/exp_bpe_fast.py                       # 图片写到 ch02/outputs/
    python ch02/experiments/exp_bpe_fast.py --bench               # 速度表，与 tokenizers、tiktoken 比
    python ch02/experiments/exp_bpe_fast.py --quick
    约 9 秒，0.2 GB；--bench 约 40 秒，1.2 GB（2 核 CPU）
"""

import argparse
import hashlib
import heapq
import json
import math
import os
import re
import statistics
import sys
import sysconfig
import time
import unicodedata
from collections import Counter, defaultdict
from functools import lru_cache, partial
from itertools import chain
from operator import add
from pathlib import Path

import matplotlib.pyplot as plt
import tiktoken
import zhplot  # noqa: F401　导入它，图上就能写中文

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
END = "<|endoftext|>"
MERGES = 200  # 阶梯上合并几次
BENCH_SIZE, BENCH_VOCABS = 2_000_000, (1000, 4000)  # 测速：文本几个字符，词表各多大
# 前导空格、连续空格、换行、缩写、没见过的词、表情、全角空格、上标数字、组合字符、控制字符：别的实现在这些地方出过错。
HARD = ["Hello,  world", "   three", "tabs\t\tand\n\n  lines \n", "I'm we'll I'M", "Akwirw ier"]
HARD += ["今天　天气²很好Ⅳ", "👍🏽 café café", "\x1c x\x85y\xa0", f"a{END}b{END}"]

# ---- 文本 → 片段 ----
# 切法与 exp_bpe_from_scratch.py 相同，只是不用 regex，用标准库的 re：快好几倍，代价是要自己补上 \p{L}（字母）和 \p{N}（数字）。
# [^\W\d_] 与 \d 只在一千多个字符上和它们不同，如 ²、½、Ⅳ：碰到时才用精确的写法，它慢 5 倍。
ODD_NUMBERS = "".join(char for char in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(char) in ("Nl", "No"))
ODD = frozenset(ODD_NUMBERS)
# Python 的 \s 比 Unicode 多认 4 个控制字符（\x1c–\x1f），所以空白要一个个列出来。
SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
PATTERN = rf"'(?:[sdmt]|ll|ve|re)| ?[^\W\d_%s]+| ?[\d%s]+| ?(?:[^{SPACE}\w]|_)+|[{SPACE}]+(?![^{SPACE}])|[{SPACE}]+"
PIECE = re.compile(PATTERN % ("", ""))
PIECE_EXACT = re.compile(PATTERN % (ODD_NUMBERS, ODD_NUMBERS))
WORD = re.compile(rf" ?[^{SPACE}]+|[{SPACE}]+(?![^{SPACE}])|[{SPACE}]+")

# region 沿用 ch02/experiments/exp_bpe_from_scratch.py: VISIBLE, BYTE_OF_ID, SPELLING, ID_OF_BYTE, to_ids, find_freq_pair, replace_pair, learn_merges_naive, learn_merges, BPETokenizerSimple
VISIBLE = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]


BYTE_OF_ID = bytes(VISIBLE + [byte for byte in range(256) if byte not in VISIBLE])


SPELLING = [chr(byte) for byte in VISIBLE] + [chr(256 + i) for i in range(256 - len(VISIBLE))]


ID_OF_BYTE = bytes.maketrans(BYTE_OF_ID, bytes(range(256)))


def to_ids(piece):
    """片段 → 编号：每个字节一个。（详解见 ch02/experiments/exp_bpe_from_scratch.py）"""
    return list(piece.encode("utf-8").translate(ID_OF_BYTE))


def find_freq_pair(sequences):
    """找出现次数最多的相邻一对；次数相同时取编号小的，这样结果总是确定的。（详解见 ch02/experiments/exp_bpe_from_scratch.py）"""
    counts = Counter()
    for ids, times in sequences:
        for pair in zip(ids, ids[1:]):
            counts[pair] += times
    return min(counts, key=lambda pair: (-counts[pair], pair), default=None)


def replace_pair(ids, pair, new_id):
    """把一串编号里的这一对，从左到右都换成新编号。（详解见 ch02/experiments/exp_bpe_from_scratch.py）"""
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
    """训练：数一遍，合并最多的一对；再数一遍，再合并……每合并一次都要把全部文本走一遍。（详解见 ch02/experiments/exp_bpe_from_scratch.py）"""
    merges = []
    for new_id in range(256, 256 + num_merges):
        pair = find_freq_pair(sequences)
        if pair is None:
            break
        sequences = [(replace_pair(ids, pair, new_id), times) for ids, times in sequences]
        merges.append(pair)
    return merges


def learn_merges(sequences, num_merges):
    """训练，结果与朴素版逐个相同，快几十倍：次数只数一遍，以后每次合并，只改含有这一对的片段。（详解见 ch02/experiments/exp_bpe_from_scratch.py）"""
    words = list(sequences)
    counts, where = Counter(), defaultdict(set)
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
            for each in zip(ids, ids[1:]):
                counts[each] -= times
                if counts[each] <= 0:
                    del counts[each]
            ids = replace_pair(ids, pair, new_id)
            for each in zip(ids, ids[1:]):
                counts[each] += times
                where[each].add(i)
            words[i] = ids, times
        merges.append(pair)
    return merges


class BPETokenizerSimple:
    """字节级 BPE 分词器，方法名与原书附带材料相同。（详解见 ch02/experiments/exp_bpe_from_scratch.py）"""

    def __init__(self, merges=(), specials=()):
        self.bpe_merges = {pair: 256 + i for i, pair in enumerate(merges)}
        spelled, self._bytes = list(SPELLING), [bytes([byte]) for byte in BYTE_OF_ID]
        for left, right in self.bpe_merges:
            spelled.append(spelled[left] + spelled[right])
            self._bytes.append(self._bytes[left] + self._bytes[right])
        self._bytes += [special.encode("utf-8") for special in specials]
        self.vocab = dict(enumerate([*spelled, *specials]))
        self.special_tokens = {special: len(spelled) + i for i, special in enumerate(specials)}
        self._cache = {}

    def train(self, text, vocab_size, allowed_special=(END,)):
        specials = sorted(allowed_special)
        num_merges = vocab_size - 256 - len(specials)
        if num_merges < 0:
            raise ValueError(f"词表大小至少是 {256 + len(specials)}（256 个字节和 {len(specials)} 个特殊词元），不能是 {vocab_size}")
        pieces = Counter()
        for part in re.split("|".join(map(re.escape, specials)), text) if specials else [text]:
            pieces += count_pieces(part)
        self.__init__(self.learn(pieces, num_merges), specials)

    def learn(self, pieces, num_merges):
        return learn_merges([(to_ids(piece), times) for piece, times in pieces.items()], num_merges)

    def encode(self, text):
        return [i for piece in PIECE.findall(text) for i in self.tokenize_with_bpe(piece)]

    def tokenize_with_bpe(self, piece):
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
        token_ids = list(token_ids)
        wrong = [i for i in token_ids if not 0 <= i < len(self._bytes)]
        if wrong:
            raise ValueError(f"编号 {wrong[0]} 不在词表里，词表是 0 到 {len(self._bytes) - 1}")
        return b"".join(self._bytes[i] for i in token_ids).decode("utf-8", errors="replace")


# endregion


def split_word(word):
    """一个词 → 片段，与 GPT-2 的切法相同。

    参数:
        word (str): WORD 切出的一个词

    返回:
        list[str]: 片段，接起来就是原来的词
    """
    return (PIECE if word.isascii() or ODD.isdisjoint(word) else PIECE_EXACT).findall(word)


def count_pieces(text):
    """数一数每种片段出现几次：先按空白粗切，再把不同的词细切，复杂的正则只要用在每个不同的词上一次。

    参数:
        text (str): 训练文本

    返回:
        Counter: 片段 → 次数，按第一次出现的先后
    """
    pieces = Counter()
    for word, times in Counter(WORD.findall(text)).items():
        for piece in split_word(word):
            pieces[piece] += times
    return pieces


def to_chars(piece):
    """片段 → 字符串，每个字符的码位就是一个编号：于是"找一对、换掉"可以用 str.split 和 join，它们是 C 写的。

    参数:
        piece (str): 片段

    返回:
        str: 长度等于字节数，每个字符的码位是一个编号
    """
    return piece.encode("utf-8").translate(ID_OF_BYTE).decode("latin-1")


def learn_merges_fast(pieces, num_merges, heap=True):
    """训练，结果与朴素版逐个相同：片段是字符串，最多的一对由堆给出。

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


class BPETokenizerFast(BPETokenizerSimple):
    """同样的分词器，换成快的做法；能读写 OpenAI 的词表文件，特殊词元也认得，编号与 tiktoken 的 gpt2 相同。

    参数:
        merges (Iterable[tuple[int, int]]): 依次合并的对
        specials (Iterable[str]): 特殊词元，编号排在最后
    """

    def __init__(self, merges=(), specials=()):
        super().__init__(merges, specials)
        self.inverse_vocab = {token: i for i, token in self.vocab.items()}
        self._merged = {chr(left) + chr(right): chr(new_id) for (left, right), new_id in self.bpe_merges.items()}
        self._parts = {new: pair for pair, new in self._merged.items()}
        self._whole = {token.translate(ID_OF_BYTE).decode("latin-1"): (i,) for i, token in enumerate(self._bytes[: 256 + len(self.bpe_merges)])}
        # 词 → 编号的缓存：文本里的词大多是重复的，所以越往后越快。不设上限，内存会随文本一直涨。
        self._cache = lru_cache(maxsize=500_000)(self.tokenize_word)

    def learn(self, pieces, num_merges):
        """片段和次数 → 依次合并的对。"""
        return learn_merges_fast(pieces, num_merges)

    def tokenize_word(self, word):
        """一个词 → 编号：切成片段，一个个来。"""
        return tuple(chain.from_iterable(map(self.tokenize_with_bpe, split_word(word))))

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
            return list(chain.from_iterable(map(self._cache, WORD.findall(text))))
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

    def save_vocab_and_merges(self, vocab_path, bpe_merges_path):
        """存成 OpenAI 的格式（encoder.json 与 vocab.bpe），tiktoken 和 transformers 也读得了。

        参数:
            vocab_path, bpe_merges_path (str 或 Path): 词表，写法 → 编号；合并，一行一对
        """
        lines = ["#version: 0.2", *(f"{self.vocab[left]} {self.vocab[right]}" for left, right in self.bpe_merges), ""]
        for path, content in ((vocab_path, json.dumps(self.inverse_vocab, ensure_ascii=False)), (bpe_merges_path, "\n".join(lines))):
            part = Path(f"{path}.part")  # 先写到临时文件再改名：中途断电，也不会留下半个词表
            part.write_text(content, encoding="utf-8", newline="\n")
            os.replace(part, path)

    def load_vocab_and_merges(self, vocab_path, bpe_merges_path):
        """读入 encoder.json 与 vocab.bpe。

        参数:
            vocab_path, bpe_merges_path (str 或 Path): 词表；合并

        异常:
            ValueError: 文件坏了，或不是这样编排的词表
        """
        try:
            vocab = json.loads(Path(vocab_path).read_text(encoding="utf-8"))
            lines = Path(bpe_merges_path).read_text(encoding="utf-8").split("\n")
            merges = [tuple(vocab[token] for token in line.split(" ")) for line in lines if line and not line.startswith("#version")]
            tokenizer = BPETokenizerFast(merges, sorted(vocab, key=vocab.get)[256 + len(merges) :])
            if tokenizer.inverse_vocab != vocab:
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise ValueError(f"{vocab_path} 与 {bpe_merges_path} 对不上，或者坏了：前 256 个应是单个字节，接着按合并的先后，最后是特殊词元") from None
        self.__dict__ = tokenizer.__dict__

    load_vocab_and_merges_from_openai = load_vocab_and_merges  # OpenAI 的文件就是这个格式，原书另有一个方法读它


# region 沿用 setup/find_data.py: find_data
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


# endregion

os.environ["TIKTOKEN_CACHE_DIR"] = str(find_data("tiktoken"))  # GPT-2 的词表由 setup/run.sh 放好，不联网


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def find_gpt2_files():
    """OpenAI 的两个词表文件，就是 tiktoken 要用的那两个：它以下载地址的 SHA-1 作文件名，这里照它的规矩算。

    返回:
        list[Path]: encoder.json 与 vocab.bpe
    """
    address = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
    return [find_data("tiktoken") / hashlib.sha1(f"{address}{name}".encode()).hexdigest() for name in ("encoder.json", "vocab.bpe")]


def in_turn(jobs, rounds):
    """轮流运行每件事：机器忽快忽慢时，大家一起受影响。

    参数:
        jobs (dict): 名字 → 函数，没有参数
        rounds (int): 几轮

    返回:
        dict[str, list[float]]: 名字 → 每轮的秒数
    """
    seconds = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ladder(text, num_merges):
    """训练的阶梯：从朴素版到快速版，一次只改一样。

    参数:
        text (str): 训练文本
        num_merges (int): 合并几次

    返回:
        dict: 名字 → 函数，没有参数，返回合并
    """
    pieces = count_pieces(text)
    once = [(to_ids(piece), times) for piece, times in pieces.items()]
    every = [(ids, 1) for ids, times in once for _ in range(times)]
    return {
        f"① 朴素版：{len(every):,} 个片段，每个都数、都改": lambda: learn_merges_naive(every, num_merges),
        f"② 相同的片段只存一份，记下次数：{len(once):,} 个": lambda: learn_merges_naive(once, num_merges),
        "③ 每次只改受影响的片段": lambda: learn_merges(once, num_merges),
        "④ 片段换成字符串，找和换都由 C 来做": lambda: learn_merges_fast(pieces, num_merges, heap=False),
        "⑤ 用堆找最多的一对，不再每次都比一遍": lambda: learn_merges_fast(pieces, num_merges),
    }


def draw(seconds, path):
    """一行一步：点是每一轮的秒数，对数刻度。

    参数:
        seconds (dict): 名字 → 每轮的秒数
        path (Path): 图片写到哪里
    """
    figure, axis = plt.subplots(figsize=(8.4, 3.2), layout="constrained")
    for y, values in enumerate(seconds.values()):
        axis.plot(values, [y] * len(values), "o", alpha=0.6)
        axis.annotate(f"{statistics.median(values):.3g} 秒", (max(values), y), xytext=(8, 0), textcoords="offset points", va="center")
    axis.set_yticks(range(len(seconds)), list(seconds))
    axis.invert_yaxis()
    axis.set(xscale="log", xmargin=0.15, xlabel="训练用了几秒（对数刻度，每一轮一个点）")
    axis.xaxis.set_major_formatter("{x:g}")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def bench(gpt2, size, rounds=3):
    """速度表：训练和编码，与别人的实现轮流运行，取中位数。文本是 Python 自带的标准库源码，每台电脑上都有。

    参数:
        gpt2 (BPETokenizerFast): 读入了 GPT-2 词表的分词器
        size (int): 文本几个字符
        rounds (int): 几轮

    返回:
        bool: 合并、编号是否都与别人的相同
    """
    files = sorted(path for path in Path(sysconfig.get_paths()["stdlib"]).rglob("*.py") if not {"site-packages", "test", "tests"} & set(path.parts))
    text = "".join(path.read_text(encoding="utf-8", errors="ignore") for path in files)[:size]
    lines, same, official = text.splitlines(keepends=True), True, tiktoken.get_encoding("gpt2")
    encode = {"本脚本（冷）": lambda: (gpt2._cache.cache_clear(), gpt2.encode(text)), "本脚本（热）": lambda: gpt2.encode(text)}
    encode["tiktoken"] = lambda: official.encode_ordinary(text)
    try:
        import tokenizers as peer  # 别人的实现，只为比较，没有装也行
    except ImportError:
        print("没有装 Hugging Face 的 tokenizers，训练没有可比的：想比较，请 pip install tokenizers")
        peer = None

    def train_peer(vocab_size, documents):
        model = peer.Tokenizer(peer.models.BPE())
        model.pre_tokenizer = peer.pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = peer.pre_tokenizers.ByteLevel.alphabet()
        model.train_from_iterator(documents, peer.trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, initial_alphabet=alphabet))
        return [tuple(pair) for pair in json.loads(model.to_str())["model"]["merges"]]

    print(f"\n训练（秒，越少越好，{rounds} 轮的中位数）　{len(text) / 1e6:g} 百万个字符；tokenizers 按行给它最快")
    for vocab_size in BENCH_VOCABS:
        ours = BPETokenizerFast()
        jobs = {"本脚本": partial(ours.train, text, vocab_size, ())} | ({"tokenizers": partial(train_peer, vocab_size, lines)} if peer else {})
        row = f"  词表 {vocab_size}　" + "　".join(f"{name} {statistics.median(values):.2f}" for name, values in in_turn(jobs, rounds).items())
        if peer:
            equal = sum((ours.vocab[a], ours.vocab[b]) == theirs for (a, b), theirs in zip(ours.bpe_merges, train_peer(vocab_size, [text])))
            same, row = same and equal == vocab_size - 256, row + f"　合并相同 {equal}/{vocab_size - 256}"
        print(row, flush=True)
    print("\n编码（MB/s，越多越好）　GPT-2 的词表；冷：缓存是空的；热：同样的文本第二遍")
    print("  " + "　".join(f"{name} {len(text.encode()) / 1e6 / statistics.median(values):.1f}" for name, values in in_turn(encode, rounds).items()))
    return same and gpt2.encode(text) == official.encode_ordinary(text)


def main():
    """读 GPT-2 的词表、爬速度的阶梯、画图；--bench 时只打印速度表。"""
    parser = argparse.ArgumentParser(description="实验　又准又快的 BPE")
    parser.add_argument("--quick", action="store_true", help="阶梯只合并 60 次，只跑一轮：看流程，不下结论")
    parser.add_argument("--bench", action="store_true", help="只打印速度表，约 40 秒")
    args = parser.parse_args()
    path, gpt2, official = find_data("the-verdict.txt", "story-en.txt"), BPETokenizerFast(), tiktoken.get_encoding("gpt2")
    gpt2.load_vocab_and_merges_from_openai(*find_gpt2_files())
    if args.bench:
        same = bench(gpt2, BENCH_SIZE)
        print("\n这个数字对吗？")
        confirm("合并与 tokenizers 逐个相同，编号与 tiktoken 逐个相同", same, "次数相同时没有取编号小的，或片段切得不一样")
        return

    print(f"一、读入 OpenAI 的词表　{len(gpt2.vocab)} 个词元，{len(gpt2.bpe_merges)} 次合并；{HARD[2]!r} → {gpt2.encode(HARD[2])}")
    texts = [*HARD, path.read_text(encoding="utf-8"), find_data("story-zh.txt").read_text(encoding="utf-8")]
    equal = all(gpt2.encode(text, {END}) == official.encode(text, allowed_special={END}) for text in texts)

    text, merges = texts[-2][:10_000], 60 if args.quick else MERGES
    steps = ladder(text, merges)
    results = [step() for step in steps.values()]  # 也是热身
    seconds = in_turn(steps, 1 if args.quick else 3)
    print(f"\n二、训练能快多少？　{path.name} 的 {len(text):,} 个字符，合并 {merges} 次")
    names, half = list(steps), {name: statistics.median(values) for name, values in seconds.items()}
    for before, name in zip([None, *names], names):
        faster = f"　比上一步快 {half[before] / half[name]:.1f} 倍" if before else ""
        print(f"  {half[name]:8.3f} 秒（{min(seconds[name]):.3f} … {max(seconds[name]):.3f}）　{name}{faster}")
    draw(seconds, OUTPUTS / "bpe_fast.png")
    print(f"图已写到 {OUTPUTS / 'bpe_fast.png'}")
    print(f"所以：不换语言，只换做法，从头到尾快了 {half[names[0]] / half[names[-1]]:.0f} 倍" + ("（--quick 只跑一轮：看流程，不下结论）。" if args.quick else "。"))

    print("\n这个数字对吗？")
    confirm("读入 GPT-2 的词表，编号与 tiktoken 逐个相同（难处理的文字和两篇故事）", equal, "片段切错了，或没有先合并编号最小的")
    confirm("阶梯的五步，合并逐个相同", all(result == results[0] for result in results), "次数改错了，或该放进堆里的没有放")


if __name__ == "__main__":
    main()
