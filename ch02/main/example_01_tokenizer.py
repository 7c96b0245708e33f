"""第 2 章 · 2.2–2.4 节　从文本到编号：手写一个玩具分词器（tokenizer）

读完你应该能回答：
    1. 词元（token）和平常说的"词"是一回事吗？标点算不算？空格呢？
    2. 词表（vocabulary）从哪里来？为什么文本里没出现过的词，SimpleTokenizerV1 一碰就报错？
    3. 编码再解码，为什么得不到原文？换成中文，这种切法又会怎样？

运行：
    python ch02/main/example_01_tokenizer.py
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 1 秒，0.1 GB（2 核 CPU）

这三节还没有张量，只有字符串和整数的列表。
"""

import os
import re
import sys
from pathlib import Path


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


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion

# %% 2.2　读入文本
# 原书用的是一个短篇小说 The Verdict；没有下载它，就用项目自带的英文短篇：步骤完全一样，只是数字不同。
path = find_data("the-verdict.txt", "story-en.txt")
raw_text = path.read_text(encoding="utf-8")
is_book = path.name == "the-verdict.txt"  # 只有用原书的文本，才拿原书的数字来核对
print(f"【2.2】文本 {path}")
print("字符数：", len(raw_text))
print("开头 99 个字符：", repr(raw_text[:99]))

# %% ① 第一刀：在空白处切开
# 圆括号是关键：没有它，re.split 会把分隔符扔掉；有了它，分隔符自己也留在结果里。
text = "Hello, world. This, is a test."
result = re.split(r"(\s)", text)
print("\n在空白处切：", result)

# %% ② 标点也要切开，否则 "Hello" 和 "Hello," 会成为两个不相干的词元
result = re.split(r"([,.]|\s)", text)
print("标点也切开：", result)
# 多出来的空字符串是怎么回事？逗号和空格紧挨着，都是分隔符，两刀之间什么也没有。

# %% ③ 丢掉空白和空字符串
# 要不要丢空白，看用途：丢掉，词表小、好讲解；但 Python 代码靠缩进表达意思，丢了就全错了。
result = [item for item in result if item.strip()]
print("去掉空白后：", result)

# %% ④ 别的标点也认得
# 方括号里只能放单个字符，"--" 是两个，所以用竖线单独列出来；单个的 "-" 不是分隔符，well-known 不会被切开。
text = "Hello, world. Is this-- a test?"
result = re.split(r'([,.:;?_!"()\']|--|\s)', text)
result = [item for item in result if item.strip()]
print("完整的正则：", result)

# %% ⑤ 用到整篇文本上
preprocessed = re.split(r'([,.:;?_!"()\']|--|\s)', raw_text)
preprocessed = [item for item in preprocessed if item.strip()]
print("\n整篇的词元数：", len(preprocessed))
print("前 30 个：", preprocessed[:30])

# %% 2.3　词表：每个不同的词元给一个编号
# 神经网络只会算数，所以用整数代表词元。先排序再编号，每次运行才得到同一份词表：set 的次序每次都可能不同。
all_words = sorted(set(preprocessed))
vocab_size = len(all_words)
vocab = {token: integer for integer, token in enumerate(all_words)}
print("\n【2.3】词表大小：", vocab_size)
# 排序按字符的 Unicode 编号：标点在前，然后大写字母，然后小写字母。所以 The 和 the 是两个互不相干的词元。
for start in range(0, 51, 10):
    print("　".join(f"{vocab[word]} {word!r}" for word in all_words[start : min(start + 10, 51)]))


# %% 分词器：编码与解码
class SimpleTokenizerV1:
    """玩具分词器：文本 → 编号（encode），编号 → 文本（decode）。

    只认得词表里有的词元，遇到生词就报 KeyError；空白在编码时已经丢了，解码只能猜着补回来。

    参数:
        vocab (dict[str, int]): 词表，词元 → 编号

    示例:
        >>> SimpleTokenizerV1({"hi": 0, "!": 1}).encode("hi!")
        [0, 1]

    出处: 原书 2.3 节
    """

    def __init__(self, vocab):
        self.str_to_int = vocab
        self.int_to_str = {i: s for s, i in vocab.items()}  # 反过来的词表，解码时用

    def encode(self, text):
        """文本 → 编号；有词元不在词表里，就报 KeyError。

        参数:
            text (str): 文本

        返回:
            list[int]: 每个词元的编号
        """
        # 切法必须与建词表时一模一样：差一个标点，切出来的东西就可能不在词表里。
        preprocessed = re.split(r'([,.:;?_!"()\']|--|\s)', text)
        preprocessed = [item.strip() for item in preprocessed if item.strip()]
        return [self.str_to_int[s] for s in preprocessed]

    def decode(self, ids):
        """编号 → 文本：用空格连起来，再把标点前的空格去掉。

        参数:
            ids (list[int]): 编号

        返回:
            str: 文本
        """
        text = " ".join(self.int_to_str[i] for i in ids)
        # \1 是第一对圆括号里匹配到的东西，也就是标点自己：把"空格 + 标点"换成"标点"。
        return re.sub(r'\s+([,.?!"()\'])', r"\1", text)


# %% 试一试：编码，再解码
tokenizer = SimpleTokenizerV1(vocab)
text = '"It\'s the last he painted, you know," Mrs. Gisburn said with pardonable pride.'
if not is_book:
    text = " ".join(raw_text.split()[:20])  # 换了文本，书里的例句就会有生词，改用自己文本的开头 20 个词
ids = tokenizer.encode(text)
decoded = tokenizer.decode(ids)
print("\n原文：", text)
print("编号：", ids)
print("解码：", decoded)

# %% 为什么解码得不到原文？
# 切开时 It、'、s 三个词元之间有没有空格，这个信息没有存下来。解码只好一律补空格，再按规则去掉标点"前面"的；
# 可 ' 的前后都不该有空格，引号有的该贴左边、有的该贴右边，-- 根本不在规则里：光靠规则补不回来。
tiny_words = ["It", "'", "s", "genius", "--", "though", "two", "spaces"]
tiny = SimpleTokenizerV1({token: i for i, token in enumerate(tiny_words)})
print()
for sample in ["It's", "genius--though", "two  spaces", "two\nspaces"]:
    print(f"{sample!r}　→　{tiny.decode(tiny.encode(sample))!r}")
# 真正的分词器（下一个脚本的 BPE）把空格也编进词元里，所以能一个字符不差地还原。

# %% 2.4　生词：V1 只会报错
unknown_text = "Hello, do you like tea. Is this-- a test?"
print("\n【2.4】V1 编码：", unknown_text)
key_error = None
try:
    print(tokenizer.encode(unknown_text))
except KeyError as error:
    key_error = error.args[0]
    print(f"KeyError: {key_error!r}　这个词在文本里从没出现过，词表里就没有它")

# %% 给词表加上两个特殊词元（special token）
# <|unk|>（unknown）顶替一切生词；<|endoftext|> 放在两篇不相干的文章之间，告诉模型"前面的与后面无关"。
# 它们要加在末尾：插在中间，后面所有词元的编号就都变了。
all_tokens = sorted(set(preprocessed))
all_tokens.extend(["<|endoftext|>", "<|unk|>"])
vocab = {token: integer for integer, token in enumerate(all_tokens)}
print("\n加了特殊词元，词表大小：", len(vocab))
print("最后 5 个：", list(vocab.items())[-5:])


# %% 第二版：遇到生词不再报错
class SimpleTokenizerV2:
    """认得特殊词元的玩具分词器：不在词表里的词元，一律换成 <|unk|>。

    不再报错，代价是信息丢失：所有生词变成同一个编号，解码时谁也认不出原来是什么。
    GPT-2 不用 <|unk|>，它把生词拆成更小的片段，见 2.5 节。

    参数:
        vocab (dict[str, int]): 词表，词元 → 编号；必须有 "<|unk|>"

    示例:
        >>> SimpleTokenizerV2({"hi": 0, "<|unk|>": 1}).encode("hi there")
        [0, 1]

    出处: 原书 2.4 节
    """

    def __init__(self, vocab):
        self.str_to_int = vocab
        self.int_to_str = {i: s for s, i in vocab.items()}

    def encode(self, text):
        """文本 → 编号，生词换成 <|unk|>。

        参数:
            text (str): 文本

        返回:
            list[int]: 每个词元的编号
        """
        # "<|endoftext|>" 里没有任何分隔符，所以切完仍是完整的一个词元，能在词表里查到。
        preprocessed = re.split(r'([,.:;?_!"()\']|--|\s)', text)
        preprocessed = [item.strip() for item in preprocessed if item.strip()]
        preprocessed = [item if item in self.str_to_int else "<|unk|>" for item in preprocessed]
        return [self.str_to_int[s] for s in preprocessed]

    def decode(self, ids):
        """编号 → 文本，与 V1 相同。

        参数:
            ids (list[int]): 编号

        返回:
            str: 文本
        """
        text = " ".join(self.int_to_str[i] for i in ids)
        return re.sub(r'\s+([,.:;?!"()\'])', r"\1", text)  # 比 V1 多管了冒号和分号


# %% 两段不相干的话，用 <|endoftext|> 隔开
tokenizer = SimpleTokenizerV2(vocab)
text1 = "Hello, do you like tea?"
text2 = "In the sunlit terraces of the palace."
joined_text = f"{text1} <|endoftext|> {text2}"
joined_ids = tokenizer.encode(joined_text)
joined_decoded = tokenizer.decode(joined_ids)
print("\n原文：", joined_text)
print("编号：", joined_ids)
print("解码：", joined_decoded)

# %% 换成中文会怎样？
# 中文的词与词之间没有空格，正则里的标点又都是半角的，于是整句话成了一个词元，几乎必然是生词。
sentence = "今天天气很好，我们去公园散步。"
pattern_en = r'([,.:;?_!"()\']|--|\s)'
pattern_zh = r'([,.:;?_!"()\'，。：；？！“”（）、]|--|\s)'  # 加上全角标点
whole = [item for item in re.split(pattern_en, sentence) if item.strip()]
clauses = [item for item in re.split(pattern_zh, sentence) if item.strip()]
print("\n中文：", sentence)
print("照搬英文的切法：", whole, "→", tokenizer.encode(sentence), "=", tokenizer.decode(tokenizer.encode(sentence)))
print("加上全角标点　：", clauses)
print("一个字一个词元：", list(sentence))
# 切到小句还是太长：换一句话，词表里就又没有了。出路有三条：
#   ① 按字切：词表几千到几万，生僻字仍是生词；② 先用工具分成"今天/天气/很/好"：要另一个模型，还会分错；
#   ③ 切到字节，再把常见的字节组合并起来：什么语言都不会有生词。GPT-2 走的是这条路，见 example_02_bpe.py。

# %% 这个数字对吗？
print("\n这个数字对吗？")
confirm("词表的编号从 0 起，连续、不重复", sorted(vocab.values()) == list(range(len(vocab))), "同一个词元给了两次编号")
same = "".join(decoded.split()) == "".join(text.split())
confirm("编码再解码，除了空白什么都没变", same, "encode 与建词表时的切法不一样")
confirm("V2 的词表比 V1 的多 2 个", len(vocab) - vocab_size == 2, "特殊词元加了两遍")
confirm("照搬英文的切法，中文一整句是 1 个词元", len(whole) == 1, "例句里有半角标点或空格")
if is_book:
    count = len(preprocessed)
    confirm(f"词元数与原书一致：4690（得到 {count}）", count == 4690, r"正则里的 \s 写成了 \\s，空格没有切开")
    confirm(f"词表大小与原书一致：1130（得到 {vocab_size}）", vocab_size == 1130, "忘了 set 去重，或空字符串没有去掉")
    book_ids = [1, 56, 2, 850, 988, 602, 533, 746, 5, 1126, 596, 5, 1, 67, 7, 38, 851, 1108, 754, 793, 7]
    confirm("V1 的编号与原书逐个相同", ids == book_ids, "词表没有先排序")
    confirm("V1 遇到 'Hello' 报 KeyError", key_error == "Hello", "词表不是用这篇小说建的")
    book_ids = [1131, 5, 355, 1126, 628, 975, 10, 1130, 55, 988, 956, 984, 722, 988, 1131, 7]
    confirm("V2 的编号与原书逐个相同", joined_ids == book_ids, "特殊词元没有加在词表末尾")

# %% 动手改
# （下面的数字是用原书的文本时的）
# 1. 把 ⑤ 里的 \s 写成 \\s（最常见的笔误）：空格没有切开，词元数从 4690 变成 1650，随后 V1 编码例句时报 KeyError。
# 2. 把加特殊词元那一格的 "<|unk|>" 去掉再运行：V2 报的不再是 KeyError: 'Hello'，而是 KeyError: '<|unk|>'。想想为什么。
# 3. 让 V1 不丢空白：⑤ 和 V1.encode 里的 item.strip() 都换成 item，V1.decode 换成 "".join(…) 并删去 re.sub，
#    tiny_words 补上 " " 和 "\n"。例句一个字符不差地还原了；代价是整篇从 4690 个词元变成 8405 个，末尾的自查也会告诉你。
