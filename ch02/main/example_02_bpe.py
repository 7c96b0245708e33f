"""第 2 章 · 2.5 节　字节对编码（byte pair encoding，BPE）：再也没有生词

读完你应该能回答：
    1. GPT-2 的词表里没有 <|unk|>，遇到从没见过的词它怎么办？
    2. 为什么一个汉字常常要 2–3 个词元，而单独解码其中一个会得到 �？
    3. "do" 和 " do"（前面带空格）是同一个词元吗？

运行：
    python ch02/main/example_02_bpe.py
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 1 秒，0.1 GB（2 核 CPU）

这一节还没有张量，只有字符串、字节和整数的列表。
"""

import os
import sys
from collections import Counter
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import tiktoken


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

# %% 2.5　准备分词器
# 词表是两个文件：encoder.json（词元 → 编号）和 vocab.bpe（50000 次合并，一行一次）。原书的这一行第一次运行要联网下载，
# 以后就读 tiktoken 的缓存。这里由 setup/prepare.py 先把它们放进缓存文件夹（上面那一行指的），不联网，编号完全相同。
tokenizer = tiktoken.get_encoding("gpt2")
print(f"【2.5】tiktoken {version('tiktoken')}，词表大小 {tokenizer.n_vocab}")

# %% 编码、解码
# 两段字符串之间少了一个空格，于是成了 terracesof：原书就是这样，照着敲才能得到同样的编号。
text = "Hello, do you like tea? <|endoftext|> In the sunlit terracesof someunknownPlace."
ids = tokenizer.encode(text, allowed_special={"<|endoftext|>"})
decoded = tokenizer.decode(ids)
print("原文：", text)
print("编号：", ids)
print("解码：", decoded)
# 两件事值得注意：<|endoftext|> 是词表里最后一个，编号 50256；someunknownPlace 是生造的词，却照样能还原。

# %% 为什么要写 allowed_special？
# 用户输入里如果混进 "<|endoftext|>" 这几个字，不该被当成真的"文章结束"。所以 tiktoken 默认拒绝，要你明说。
as_token = tokenizer.encode("<|endoftext|>", allowed_special={"<|endoftext|>"})
as_text = tokenizer.encode("<|endoftext|>", disallowed_special=())
print("\n当特殊词元：", as_token)
print("当普通文字：", as_text, f"（切成了 {len(as_text)} 个词元）")
try:
    tokenizer.encode("<|endoftext|>")
except ValueError as error:
    print("都不写：ValueError", str(error).splitlines()[0])

# %% 看看每个编号是哪几个字
# 词与词之间的空格，并进了后一个词元的开头：所以 "do" 与 " do" 是两个不同的词元，解码时也不必再猜哪里有空格。
print("\n逐个解码：", [tokenizer.decode([i]) for i in ids])
print("编号：", {word: tokenizer.encode(word) for word in ["do", " do", "Do", "DO"]})

# %% 没见过的词：拆成见过的片段（原书练习 2.1）
unknown = "Akwirw ier"
unknown_ids = tokenizer.encode(unknown)
print("\n没见过的词：", repr(unknown), "→", unknown_ids)
for i in unknown_ids:
    print(f"  {i:>5} → {tokenizer.decode([i])!r}")
print("解码：", repr(tokenizer.decode(unknown_ids)))

# %% 词表是怎样来的？从字节开始，一对一对地合并
# 训练分词器：从 256 个字节出发，反复把语料里最常相邻的一对合并成新词元，做 50000 次。所以 256 + 50000 + 1 = 50257。
# 编号只是合并的先后，不是词频。早学到的多半是中间产物：' t'（256）和 'he'（258）又合成 ' the'（262），自己就少见了。
path = find_data("the-verdict.txt", "story-en.txt")
counts = Counter(tokenizer.encode(path.read_text(encoding="utf-8")))
print(f"\n编号 256–265，在 {path.name} 里各出现几次：", {tokenizer.decode([i]): counts[i] for i in range(256, 266)})


# %% 使用分词器：按训练时的先后，把能合并的一对对合并起来
# 词表反过来：一段字节 → 编号。编号越小，合并得越早；最后的 50256 是特殊词元，不参与合并。
rank_of = {tokenizer.decode_single_token_bytes(i): i for i in range(tokenizer.n_vocab - 1)}


def merge_by_hand(word):
    """把一个词从字节合并成词元，打印每一步。只为看清过程，tiktoken 用 Rust 写的要快得多。

    参数:
        word (str): 一个词，可以带前面的空格

    返回:
        list[int]: 词元编号，应与 tokenizer.encode 相同

    出处: Sennrich et al., Neural Machine Translation of Rare Words with Subword Units, 2016；字节版见 GPT-2 论文
    """
    parts = [bytes([byte]) for byte in word.encode("utf-8")]
    while True:
        print("  ", " ".join(repr(part)[1:] for part in parts))  # [1:] 去掉 bytes 前面的 b，看着清爽
        ranks = [rank_of.get(left + right, float("inf")) for left, right in pairwise(parts)]  # 不在词表里：无穷大
        if not ranks or min(ranks) == float("inf"):  # 只剩一段，或哪一对都不在词表里：合并完了
            return [rank_of[part] for part in parts]
        i = ranks.index(min(ranks))  # 编号最小的一对最先合并，并列时取最左边的
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


by_hand = {}
for word in [" terraces", "Akwirw"]:
    print(f"\n{word!r} 的合并过程")
    by_hand[word] = merge_by_hand(word)
    print("  编号", by_hand[word])

# %% 汉字：先变成 UTF-8 字节，再合并
# 一个汉字在 UTF-8 里是 3 个字节。GPT-2 的语料几乎全是英文，3 个字节常常合并不到一起，于是一个字占 2–3 个词元。
sentence = "今天天气很好，我们去公园散步。"
print("\n中文：", sentence)
for char in dict.fromkeys(sentence):  # dict.fromkeys：去掉重复的字，又不打乱次序
    pieces = [tokenizer.decode_single_token_bytes(i).hex(" ") for i in tokenizer.encode(char)]
    print(f"  {char}　字节 {char.encode('utf-8').hex(' ')}　词元 {' | '.join(pieces)}　{tokenizer.encode(char)}")

# %% 单个词元为什么会解码成 �？
# 它只有一个字的前一两个字节，不成字符；decode 遇到不成字符的字节，就用 �（U+FFFD，替换字符）代替。
# 所以中文要攒够了再解码：一个词元一个词元地打印生成结果，屏幕上会满是 �。第 5 章生成中文时会再遇到。
hello_ids = tokenizer.encode("你好")
singles = [tokenizer.decode([i]) for i in hello_ids]
print("\n'你好' 的编号：", hello_ids)
print("一个一个解码：", singles)
print("合起来解码　：", tokenizer.decode(hello_ids))
print("看字节才清楚：", [tokenizer.decode_single_token_bytes(i) for i in hello_ids])

# %% 代价有多大？
# 最早收进 Unicode 的汉字是 U+4E00 到 U+9FA5，20902 个，看看各要几个词元；再拿意思相同的两句话比一比。
characters = [chr(code) for code in range(0x4E00, 0x9FA6)]
sizes = {char: len(tokenizer.encode(char)) for char in characters}
print("\n每个汉字的词元数：", dict(sorted(Counter(sizes.values()).items())))
print("只要 1 个词元的：", "".join(char for char in characters if sizes[char] == 1), "（好些是日文里的写法）")
english = "The weather is lovely today, so let's take a walk in the park."
print(f"同样的意思：英文 {len(tokenizer.encode(english))} 个词元，中文 {len(tokenizer.encode(sentence))} 个")
# 词元多，等于同样的上下文长度能装的内容少，训练和生成也都更慢。新的模型用中文语料训练自己的分词器，就是为了这个。

# %% 这个数字对吗？
print("\n这个数字对吗？")
book_ids = [15496, 11, 466, 345, 588, 8887, 30, 220, 50256, 554]
book_ids += [262, 4252, 18250, 8812, 2114, 1659, 617, 34680, 27271, 13]
confirm("词表 50257 个 = 256 个字节 + 50000 次合并 + 1 个特殊词元", tokenizer.n_vocab == 50257, "用的不是 GPT-2 的词表")
confirm("20 个编号与原书逐个相同", ids == book_ids, "terracesof 之间多敲了一个空格（书里没有）")
confirm("解码一个字符不差地还原", decoded == text, "编码时漏了 allowed_special")
confirm("Akwirw ier 与原书练习 2.1 相同", unknown_ids == [33901, 86, 343, 86, 220, 959], "大小写或空格抄错了")
same = all(by_hand[word] == tokenizer.encode(word) for word in by_hand)
confirm("手工合并与 tiktoken 相同", same, "没有每次都先合并编号最小的一对")
restored = tokenizer.decode(tokenizer.encode(sentence))
confirm("中文也能一个字符不差地还原", restored == sentence, "把词元一个一个分开解码了")
confirm("'你好' 的 4 个词元，单独解码全是 �", singles == ["\ufffd"] * 4, "用的不是 GPT-2 的词表")

# %% 动手改
# 1. 给例句的 terracesof 补上空格：第二条自查变成 ✗，但编号只差一个，"of"（1659）换成了 " of"（286）。
# 2. 在 [" terraces", "Akwirw"] 里加上 "你好" 和 "龍"：前者合并两次就停了，后者能一路合并成 1 个词元。
# 3. 编码 "        return x"（8 个空格缩进）和 "12345678"：空格几乎一个算一个词元，数字切成 123、45、678。
#    GPT-2 不擅长写 Python、也不擅长算术，分词器要负一部分责任。
