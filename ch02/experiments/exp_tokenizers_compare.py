"""第 2 章 · 实验　同样的内容，各种分词器各要几个词元？

问题：　同样的意思，中文为什么比英文贵？贵在分词器，还是贵在中文？
先猜：　GPT-2 编码一句中文要的词元，是英文译文的几倍？换成用中文训练的 BPE 呢？（先想 10 秒，再运行）
看点：　① 按字符切，中文省得多；按 GPT-2 切，中文贵得多；换一份词表，又反过来。② 每个词元平均装几个字节。③ 按词切很省，却有认不得的词。
动手改：1. SENTENCES 里换成自己的一句话和它的译文；换成 "123456789012" 和它的中文读法，GPT-2 就差到 8 倍。
        2. --vocab-size 改成 400 和 3000：自训 BPE（中英）的中文，从每个字符 1.7 个词元降到 0.8 个；GPT-2 那一行一个数也不变。
        3. 把 own 里 "自训 BPE（中英）" 的 + train["中文"] 去掉：中文立刻变成一个字三个词元，比 GPT-2 还贵。

运行：
    python ch02/experiments/exp_tokenizers_compare.py                     # 图片写到 ch02/outputs/
    python ch02/experiments/exp_tokenizers_compare.py --text 我的文章.txt # 再多比一份自己的文本
    约 2 秒，0.2 GB（2 核 CPU）
"""

import argparse
import math
import os
import re
import sys
import textwrap
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
import regex
import tiktoken
import zhplot  # noqa: F401　导入它，图上就能写中文

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
SENTENCES = {
    "英文": "The weather is lovely today, so let's take a walk in the park.",
    "中文": "今天天气很好，我们去公园散步吧。",
    "代码": "    for i in range(10):\n        total += x[i]  # sum",
}


# region 沿用 ch02/experiments/exp_bpe_from_scratch.py: END, PIECE, VISIBLE, BYTE_OF_ID, SPELLING, ID_OF_BYTE, count_pieces, to_ids, replace_pair, learn_merges, BPETokenizerSimple
END = "<|endoftext|>"


PIECE = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


VISIBLE = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]


BYTE_OF_ID = bytes(VISIBLE + [byte for byte in range(256) if byte not in VISIBLE])


SPELLING = [chr(byte) for byte in VISIBLE] + [chr(256 + i) for i in range(256 - len(VISIBLE))]


ID_OF_BYTE = bytes.maketrans(BYTE_OF_ID, bytes(range(256)))


def count_pieces(text):
    """数一数每种片段出现几次：训练只需要这些次数，不需要原文。片段 → 次数，按第一次出现的先后。（详解见 ch02/experiments/exp_bpe_from_scratch.py）"""
    return Counter(PIECE.findall(text))


def to_ids(piece):
    """片段 → 编号：每个字节一个。（详解见 ch02/experiments/exp_bpe_from_scratch.py）"""
    return list(piece.encode("utf-8").translate(ID_OF_BYTE))


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


def by_word(text):
    """原书 2.2 节的切法：在空白和标点处切开，空白丢掉。

    参数:
        text (str): 文本

    返回:
        list[str]: 词元
    """
    return [item for item in re.split(r'([,.:;?_!"()\'，。！？：；、“”]|--|\s)', text) if item.strip()]


def pieces_of(tokenizer, text):
    """BPE 分词器切出的每一段。

    参数:
        tokenizer: 有 encode 的分词器；tiktoken 的或自己的
        text (str): 文本

    返回:
        list[bytes]: 每个词元的字节
    """
    if isinstance(tokenizer, tiktoken.Encoding):
        return tokenizer.decode_tokens_bytes(tokenizer.encode_ordinary(text))
    return [tokenizer._bytes[i] for i in tokenizer.encode(text)]


def display(piece):
    """一段怎么显示：成字的显示字（空格写 ·，换行写 \\n），不成字的显示十六进制。

    参数:
        piece (str 或 bytes): 一段

    返回:
        str: 显示用的文字
    """
    if isinstance(piece, bytes):
        try:
            piece = piece.decode("utf-8")
        except UnicodeDecodeError:
            return piece.hex()
    return piece.replace(" ", "·").replace("\n", r"\n")


def draw(cuts, path):
    """画图：每个句子、每种分词器一行，一个方块是一个词元，不成字的是灰色。

    参数:
        cuts (dict): 分词器的名字 → 切法（文本 → 段的列表）
        path (Path): 图片写到哪里
    """
    figure, axes = plt.subplots(len(SENTENCES), 1, figsize=(13, 2.6 * len(SENTENCES)), layout="constrained")
    for axis, (language, sentence) in zip(axes, SENTENCES.items()):
        longest = 0
        for row, (name, cut) in enumerate(cuts.items()):
            x, pieces = 0.0, cut(sentence)
            for i, piece in enumerate(pieces):
                text = display(piece)
                whole = not (isinstance(piece, bytes) and "\ufffd" in piece.decode("utf-8", "replace"))
                # 汉字约两个字母宽；每个方块留一点边。
                width = 0.5 + sum(1.9 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)
                axis.add_patch(plt.Rectangle((x, -row - 0.4), width - 0.15, 0.8, color=("#9ecae1", "#fdd0a2")[i % 2] if whole else ("0.78", "0.88")[i % 2]))
                axis.text(x + width / 2 - 0.08, -row, text.replace("$", r"\$"), ha="center", va="center", fontsize=8)
                x += width
            axis.text(x + 0.4, -row, f"{len(pieces)} 个", va="center", fontsize=9)
            longest = max(longest, x)
        names = list(cuts)
        axis.set(xlim=(-0.3, longest + 6), ylim=(0.6 - len(cuts), 0.6), xticks=[])
        axis.set_yticks([-row for row in range(len(cuts))], names)
        axis.set_title(f"{language}：一个方块是一个词元，灰色的是半个字", fontsize=11)
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight", pad_inches=0.15)
    plt.close(figure)


def main():
    """五种分词器，三种文本，数一数、画一画。"""
    parser = argparse.ArgumentParser(description="实验　比较分词器")
    parser.add_argument("--text", help="再多比一份文本，UTF-8 编码")
    parser.add_argument("--vocab-size", type=int, default=1000, help="自己训练的 BPE 的词表大小，257 到 50000（默认：1000）")
    args = parser.parse_args()
    if not 257 <= args.vocab_size <= 50000:
        parser.error(f"--vocab-size 应在 257 到 50000 之间，不能是 {args.vocab_size}")
    try:
        paths = {"英文": find_data("the-verdict.txt", "story-en.txt"), "中文": find_data("story-zh.txt"), "代码": Path(textwrap.__file__)}
        if args.text:
            paths["自己的文本"] = Path(args.text)
        texts = {name: read_text(path) for name, path in paths.items()}
        gpt2 = tiktoken.get_encoding("gpt2")
    except (ValueError, OSError) as error:
        parser.error(str(error))

    # 自己的 BPE 只用每份文本的前八成训练，后两成用来比较，免得"考的就是背过的"。
    held_out = {name: text[len(text) * 4 // 5 :] for name, text in texts.items()}
    train = {name: text[: len(text) * 4 // 5] for name, text in texts.items()}
    own = {"自训 BPE（英文）": train["英文"], "自训 BPE（中英）": train["英文"] + train["中文"]}
    tokenizers = {"GPT-2": gpt2}
    for name, text in own.items():
        tokenizers[name] = BPETokenizerSimple()
        tokenizers[name].train(text, args.vocab_size)
    cuts = {"按字符": list, "按词": by_word}
    cuts |= {name: lambda text, tokenizer=tokenizer: pieces_of(tokenizer, text) for name, tokenizer in tokenizers.items()}

    for name, path in paths.items():
        print(f"{name}　{path}")
    print("\n每个字符要几个词元（后两成，越小越省）　括号里：每个词元平均几个字节")
    ratios = {}
    for name, cut in cuts.items():
        row = []
        for language, text in held_out.items():
            n = len(cut(text))
            ratios[name, language] = n / len(text)
            row.append(f"{language} {n / len(text):.2f}（{len(text.encode()) / n:.1f}）")
        print(f"  {name}　" + "　".join(row))
    known = set(by_word("".join(train.values())))
    words = by_word("".join(held_out.values()))
    unknown = sum(word not in known for word in words) / len(words)
    print(f"  按词切看着最省，但词表里有 {len(known):,} 个词，后两成里还有 {unknown:.0%} 不认得（中文没有空格，几乎每个短句都是生词）")

    print("\n同一句话的英文和中文")
    cost = {}
    for name, cut in cuts.items():
        en, zh = len(cut(SENTENCES["英文"])), len(cut(SENTENCES["中文"]))
        cost[name] = zh / en
        print(f"  {name}　英文 {en} 个，中文 {zh} 个，中文是英文的 {zh / en:.2f} 倍")
    draw(cuts, OUTPUTS / "tokenizers_compare.png")
    print(f"图已写到 {OUTPUTS / 'tokenizers_compare.png'}")

    cheap, dear = cost["按字符"], cost["GPT-2"]
    print(f"\n所以：按字符数，这句中文只有英文的 {cheap:.0%}；用 GPT-2 切，却是英文的 {dear:.0%}；", end="")
    counts = {(name, language): len(cuts[name](SENTENCES[language])) for name in ("GPT-2", "自训 BPE（中英）") for language in ("英文", "中文")}
    print(f"用中英文各一篇训练的 BPE，是 {cost['自训 BPE（中英）']:.0%}。")
    (en, own_en), (zh, own_zh) = ([counts[name, language] for name in ("GPT-2", "自训 BPE（中英）")] for language in ("英文", "中文"))
    print(f"这个比例里掺了英文：英文从 {en} 个变成 {own_en} 个（小词表装不下许多英文单词）。只看中文，{zh} 个变成 {own_zh} 个，词表却只有 {args.vocab_size}，GPT-2 的有 {gpt2.n_vocab}", end="")
    print("：贵不贵，看词表是拿什么文字学的。" if own_zh < zh else "。")
    before, after = ratios["GPT-2", "中文"], ratios["自训 BPE（中英）", "中文"]
    print(f"整篇中文也一样：GPT-2 每个字符 {before:.2f} 个词元，自训的 {after:.2f} 个。同样 1024 个词元的上下文，装得下 {1024 / before:.0f} 个字，或 {1024 / after:.0f} 个。")

    print("\n这个数字对吗？")
    exact = {name: cut for name, cut in cuts.items() if name not in ("按字符", "按词")}
    same = all(b"".join(cut(text)).decode("utf-8") == text for cut in exact.values() for text in texts.values())
    confirm("三种 BPE 切出的段接起来，都与原文一个字节不差", same, "切的时候丢了空格")
    confirm("每个词元不少于 1 个字节：BPE 的词元数不超过字节数", all(len(cut(text)) <= len(text.encode()) for cut in exact.values() for text in texts.values()), "有空词元")
    by_byte = all(ratios["自训 BPE（英文）", language] <= 3 for language in ("英文", "中文"))
    confirm("常用的汉字是 3 个字节，没学过中文的 BPE 每个字符也不超过 3 个词元", by_byte, "没有按 UTF-8 编码")


if __name__ == "__main__":
    main()
