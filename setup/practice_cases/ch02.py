"""手敲练习 · 第 2 章　每个组件的任务、检查和典型错误

格式与怎样添加，见 setup/practice.md。检查函数只拿到一个 ns：被检查的文件里定义的一切，用 ns.名字 取。
"""

from contextlib import contextmanager
from unittest import mock


class CharTokenizer:
    """一个字符一个词元的假分词器，用法与 tiktoken 相同：特殊词元没有得到允许就报错。"""

    chars = "\n" + "".join(map(chr, range(32, 127)))  # 换行和 95 个看得见的英文字符，编号 0–95；96 是 <|endoftext|>

    def encode(self, text, allowed_special=(), disallowed_special="all"):
        """文本 → 编号。"""
        special = "<|endoftext|>"
        if special in text and special not in allowed_special:
            if disallowed_special == "all":
                raise ValueError("特殊词元没有得到允许")
            return [self.chars.index(char) for char in text]
        ids = []
        for i, part in enumerate(text.split(special)):
            ids += [96] * (i > 0) + [self.chars.index(char) for char in part]
        return ids


@contextmanager
def swapped(function, **others):
    """暂时换掉一个函数用到的全局名字，用完换回来。"""
    names = function.__globals__
    before = {name: names[name] for name in others if name in names}
    names.update(others)
    try:
        yield
    finally:
        for name in others:
            del names[name]
        names.update(before)


def refused(work, error=ValueError):
    """应当被拒绝的输入：得到异常的名字；没有拒绝，就得到结果。别的异常照样往外抛，报告才说得出在哪一行。"""
    try:
        return work()
    except error as problem:
        return f"抛出 {type(problem).__name__}"


# ---- SimpleTokenizerV1、SimpleTokenizerV2 ----
WORDS = ["!", '"', "'", "(", ")", ",", "--", ".", ":", ";", "?", "Hello", "It", "Nice", "a", "day", "hello", "is", "it", "s", "well-known", "world"]


def small_vocab(*special):
    """玩具词表：22 个词元，末尾再加上特殊词元。"""
    return {word: i for i, word in enumerate([*WORDS, *special])}


def v1_encode(ns):
    """标点、破折号、空白都切得对。"""
    encode = ns.SimpleTokenizerV1(small_vocab()).encode
    texts = {"逗号与句号": "Hello, world.", "破折号": "hello--world", "引号": "It's \"hello\"", "连字符不切": "well-known", "多个空格": "hello   world ", "换行": "Hello\nworld", "空文本": ""}
    return {name: encode(text) for name, text in texts.items()}


def v1_dense(ns):
    """没有空白的文本；标点在末尾时，切出来的空字符串要去掉。"""
    encode = ns.SimpleTokenizerV1(small_vocab()).encode
    return {"标点在中间": encode("Hello,world"), "标点在末尾": encode("Hello,world.")}


def v1_decode(ns):
    """解码：空格连接，标点贴左边。"""
    tokenizer = ns.SimpleTokenizerV1(small_vocab())
    sentences = {"标点贴左边": [11, 5, 21, 0], "撇号与引号": [12, 2, 19, 1, 16, 1], "括号": [3, 16, 4], "冒号不管": [16, 8, 21]}
    result = {name: tokenizer.decode(ids) for name, ids in sentences.items()}
    return result | {"编码再解码": tokenizer.decode(tokenizer.encode("Hello, world. Nice day!"))}


def v1_unknown(ns):
    """生词报 KeyError；词表原样留着。"""
    tokenizer = ns.SimpleTokenizerV1(small_vocab())
    return {"编码生词": refused(lambda: tokenizer.encode("Hello tea"), KeyError), "解码没有的编号": refused(lambda: tokenizer.decode([99]), KeyError), "大小写不同": refused(lambda: tokenizer.encode("NICE"), KeyError)}


def v2_encode(ns):
    """生词换成 <|unk|>，特殊词元认得出。"""
    encode = ns.SimpleTokenizerV2(small_vocab("<|endoftext|>", "<|unk|>")).encode
    texts = {"没有生词": "Hello, world.", "一个生词": "Hello tea.", "全是生词": "do you like tea", "大小写不同": "NICE Day", "特殊词元": "Hello <|endoftext|> world", "空文本": ""}
    return {name: encode(text) for name, text in texts.items()}


def v2_decode(ns):
    """解码：比 V1 多管冒号和分号。"""
    tokenizer = ns.SimpleTokenizerV2(small_vocab("<|endoftext|>", "<|unk|>"))
    sentences = {"标点贴左边": [11, 5, 21, 0], "冒号与分号": [16, 8, 21, 9, 15], "特殊词元": [11, 22, 23, 7]}
    result = {name: tokenizer.decode(ids) for name, ids in sentences.items()}
    return result | {"编码再解码": tokenizer.decode(tokenizer.encode("Hello, tea: it is nice!"))}


# ---- GPTDatasetV1、create_dataloader_v1 ----
def dataset_samples(ns):
    """样本的内容：输入、目标、个数。"""
    dataset = ns.GPTDatasetV1("Every effort moves you", CharTokenizer(), max_length=4, stride=4)
    return {"样本数": len(dataset), "第 0 个样本": tuple(dataset[0]), "最后一个样本": tuple(dataset[len(dataset) - 1])}


def dataset_stride(ns):
    """步幅：重叠、正好首尾相接、隔着走。"""
    result = {}
    for stride in (1, 3, 5):
        dataset = ns.GPTDatasetV1("0123456789", CharTokenizer(), max_length=3, stride=stride)
        result[f"步幅 {stride} 的输入"] = [dataset[i][0] for i in range(len(dataset))]
    return result


def dataset_edges(ns):
    """边界：刚好差一个词元、正好整除、有特殊词元。"""
    make = lambda text: [list(map(int, part)) for sample in ns.GPTDatasetV1(text, CharTokenizer(), 4, 4) for part in sample]  # noqa: E731
    return {
        "5 个词元，恰好一个样本": make("abcde"),
        "4 个词元，凑不出目标": refused(lambda: make("abcd")),
        "8 个词元，第二个窗口没有目标": make("abcdefgh"),
        "含有 <|endoftext|>": make("ab<|endoftext|>cd"),
    }


def loader(ns, **options):
    """建一个数据加载器；tiktoken 给出的是假分词器，每个词元是一个字符，所以不用词表，也不联网。"""
    import tiktoken

    def get_encoding(name):
        if name != "gpt2":
            raise ValueError(f"要的是 gpt2 的分词器，不是 {name}")
        return CharTokenizer()

    # 写成 from tiktoken import get_encoding 的也换得掉。
    with mock.patch.object(tiktoken, "get_encoding", get_encoding), swapped(ns.create_dataloader_v1, get_encoding=get_encoding):
        return ns.create_dataloader_v1("Every effort moves you toward finding", **options)


def loader_batches(ns):
    """不打乱时，每一批的内容与形状。"""
    batches = list(loader(ns, batch_size=2, max_length=4, stride=3, shuffle=False))
    return {"批数": len(batches), "第一批输入": batches[0][0], "第一批目标": batches[0][1], "最后一批的形状": list(batches[-1][0].shape)}


def loader_drop_last(ns):
    """最后不满的一批：丢掉，或留着。"""
    count = lambda keep: [len(inputs) for inputs, _ in loader(ns, batch_size=4, max_length=4, stride=4, shuffle=False, drop_last=not keep)]  # noqa: E731
    return {"丢掉": count(False), "留着": count(True)}


def loader_shuffle(ns):
    """打乱：同一个种子得到同样的次序；每一轮都重新打乱。"""
    import torch

    torch.manual_seed(123)
    shuffled = loader(ns, batch_size=2, max_length=4, stride=4, shuffle=True)
    return {"第一轮": [inputs for inputs, _ in shuffled], "第二轮": [inputs for inputs, _ in shuffled]}


def loader_defaults(ns):
    """默认值与原书相同。"""
    import inspect

    return {"默认值": {name: parameter.default for name, parameter in inspect.signature(ns.create_dataloader_v1).parameters.items() if name != "txt"}}


# ---- merge_by_hand ----
# 假词表：单个字节的编号是 0–255，合并出来的从 256 起，越小越先合并；"你" 的三个字节只合并得了前两个。
MERGES = [b"ow", b"lo", b"er", b"we", b"wer", b"th", b"he", b"aa", b"\xe4\xbd"]
RANKS = {bytes([byte]): byte for byte in range(256)} | {piece: 256 + i for i, piece in enumerate(MERGES)}


def merged(ns, words):
    """用假词表合并几个词。"""
    with swapped(ns.merge_by_hand, rank_of=RANKS):
        return {repr(word): ns.merge_by_hand(word) for word in words}


def merge_order(ns):
    """先合并编号最小的一对，不是最左边的一对。"""
    return merged(ns, ["lower", "slow", "the", "thhe", "newer"])


def merge_edges(ns):
    """并列、不能合并、只有一个字节、空的、汉字。"""
    return merged(ns, ["aaa", "xyz", "x", "", "你", " 你low"])


COMPONENTS = [
    dict(
        name="SimpleTokenizerV1",
        title="玩具分词器第一版",
        section="2.3",
        source="ch02/main/example_01_tokenizer.py",
        parts=["SimpleTokenizerV1"],
        needs=[],
        extra={},
        task="写一个类 SimpleTokenizerV1(vocab)，vocab 是「词元 → 编号」的字典。encode(text) 先用 re.split 在标点 , . : ; ? _ ! \" ( ) '、双连字符 -- 和空白处切开，标点自己要留下，"
        "去掉空白和空字符串，再查出编号的列表；遇到生词就让它报 KeyError。decode(ids) 用空格把词元连起来，再用 re.sub 去掉 , . ? ! \" ( ) ' 这些标点前面的空格。",
        blanks=["{i: s for s, i in vocab.items()}", "[item.strip() for item in preprocessed if item.strip()]", "[self.str_to_int[s] for s in preprocessed]", '" ".join(self.int_to_str[i] for i in ids)', 'r"\\1"'],
        cases=[("编码", v1_encode), ("没有空白的文本", v1_dense), ("解码", v1_decode), ("生词", v1_unknown)],
        mutants=[
            ("{i: s for s, i in vocab.items()}", "{s: i for s, i in vocab.items()}", "int_to_str 没有反过来，仍是「词元 → 编号」，解码时按编号去查，当然查不到。"),
            ("r'([,.:;?_!\"()\\']|--|\\s)'", "r'[,.:;?_!\"()\\']|--|\\s'", "正则里少了最外面的圆括号：re.split 只保留圆括号里匹配到的分隔符，标点全被扔掉了。"),
            ("|--|\\s)", "|\\s)", "正则里漏了 --：它是两个字符，放不进方括号，要用竖线单独列出来，否则破折号会和两边的词粘成一个生词。"),
            ("|--|\\s)", "|--|\\\\s)", "原始字符串里的 \\s 写成了 \\\\s，匹配的是「反斜杠加 s」，空白处根本没有切开。"),
            ("[item.strip() for item in preprocessed if item.strip()]", "preprocessed", "没有去掉空白和空字符串：两个分隔符紧挨着时，re.split 会在中间放一个空字符串，它不在词表里。"),
            ('" ".join', '"".join', "解码时词元之间没有补空格，所有单词都粘在了一起。"),
            ("re.sub(r'\\s+([,.?!\"()\\'])', r\"\\1\", text)", "text", "忘了去掉标点前的空格，解码出来的逗号、句号前面都空着一格。"),
            ('r"\\1"', '""', "re.sub 把「空格加标点」整个换成了空，标点也丢了；应换成 \\1，也就是圆括号里匹配到的标点自己。"),
        ],
    ),
    dict(
        name="SimpleTokenizerV2",
        title="玩具分词器第二版",
        section="2.4",
        source="ch02/main/example_01_tokenizer.py",
        parts=["SimpleTokenizerV2"],
        needs=[],
        extra={},
        task="写一个类 SimpleTokenizerV2(vocab)：与 V1 相同，只改两处。encode 把不在词表里的词元一律换成 \"<|unk|>\"，不再报错；decode 除了 V1 管的标点，也去掉冒号和分号前面的空格。vocab 里已经有 \"<|unk|>\" 和 \"<|endoftext|>\"。",
        blanks=["{i: s for s, i in vocab.items()}", "[item.strip() for item in preprocessed if item.strip()]", "item in self.str_to_int", "[self.str_to_int[s] for s in preprocessed]", '" ".join(self.int_to_str[i] for i in ids)'],
        cases=[("编码", v2_encode), ("解码", v2_decode)],
        mutants=[
            ('[item if item in self.str_to_int else "<|unk|>" for item in preprocessed]', "[item for item in preprocessed]", "没有把生词换成 <|unk|>，遇到词表里没有的词仍然报 KeyError。"),
            ('[item if item in self.str_to_int else "<|unk|>" for item in preprocessed]', "[item for item in preprocessed if item in self.str_to_int]", "把生词直接丢掉了：后面看不出这里少过东西，应当换成 <|unk|> 占住位置。"),
            ('else "<|unk|>" for', 'else "<|endoftext|>" for', "生词换成了 <|endoftext|>，模型会以为文章到此结束；顶替生词的应是 <|unk|>。"),
            ("item in self.str_to_int else", "item in self.int_to_str else", "查错了字典：int_to_str 的键是编号，任何词都不在里面，于是全成了 <|unk|>。"),
            ("[,.:;?!\"()\\']", "[,.?!\"()\\']", "解码的正则照抄了 V1，漏了冒号和分号，它们前面会留着空格。"),
            ("[item.strip() for item", "[item.strip().lower() for item", "多做了一次小写：词表区分大小写，The 和 the 是两个词元，改了大小写就查不到或查错。"),
        ],
    ),
    dict(
        name="merge_by_hand",
        title="手工合并 BPE",
        section="2.5",
        source="ch02/main/example_02_bpe.py",
        parts=["merge_by_hand"],
        needs=[],
        extra={},
        task="全局变量 rank_of 是 GPT-2 的词表，一个「一段字节 → 编号」的字典，检查时会给出。写一个函数 merge_by_hand(word)：把词变成 UTF-8 字节，一个字节一段；"
        "每一步在相邻的两段里，找合起来编号最小的一对（并列取最左边），合成一段；哪一对都不在词表里，或只剩一段时，返回各段的编号。每一步可以打印出来看。",
        blanks=['[bytes([byte]) for byte in word.encode("utf-8")]', 'rank_of.get(left + right, float("inf"))', "[rank_of[part] for part in parts]", "ranks.index(min(ranks))", "[parts[i] + parts[i + 1]]"],
        cases=[("合并的次序", merge_order), ("边界", merge_edges)],
        mutants=[
            ("ranks.index(min(ranks))", 'next(k for k, rank in enumerate(ranks) if rank < float("inf"))', "从左到右见到能合并的就合并；应当每次都合并编号最小的那一对，它是训练时最先学到的。"),
            ("ranks.index(min(ranks))", 'ranks.index(max(rank for rank in ranks if rank < float("inf")))', "先合并了编号最大的一对，次序正好反了。"),
            ("parts[i : i + 2] =", "parts[i : i + 1] =", "合并之后右边那一段没有去掉，它被用了两次；要把两段换成一段。"),
            ('[bytes([byte]) for byte in word.encode("utf-8")]', '[char.encode("utf-8") for char in word]', "从字符出发，而不是从字节出发：一个汉字有三个字节，词表里多半没有整个字，查不到编号。"),
            ('left + right, float("inf")', "left + right, 0", "不在词表里的一对得到了编号 0，反而最先被合并；应当是无穷大，表示不能合并。"),
            ("if not ranks or min(ranks)", "if min(ranks)", "没有考虑只剩一段的情况：这时没有相邻的一对，对空列表求 min 会报错。"),
            ("pairwise(parts)]", "zip(parts[::2], parts[1::2])]", "只看了第 1、2 段和第 3、4 段，漏掉了跨在中间的第 2、3 段。"),
        ],
    ),
    dict(
        name="GPTDatasetV1",
        title="滑动窗口数据集",
        section="2.6",
        source="ch02/main",
        parts=["GPTDatasetV1"],
        needs=[],
        extra={},
        task="写一个 Dataset 的子类 GPTDatasetV1(txt, tokenizer, max_length, stride)：用 tokenizer.encode 分词（允许 <|endoftext|>），词元数不超过 max_length 时报 ValueError；"
        "每隔 stride 取一个长 max_length 的窗口，存成 self.input_ids，右移一位的存成 self.target_ids，都是 (n, t) 的整数张量。__len__ 返回样本数，__getitem__(idx) 返回第 idx 个（输入，目标）。",
        blanks=['allowed_special={"<|endoftext|>"}', "len(token_ids) <= max_length", "torch.tensor(token_ids)", "ids[:-1].unfold(0, max_length, stride)", "ids[1:].unfold(0, max_length, stride)", "self.input_ids[idx], self.target_ids[idx]"],
        cases=[("样本", dataset_samples), ("步幅", dataset_stride), ("边界", dataset_edges)],
        mutants=[
            ("ids[1:].unfold", "ids[:-1].unfold", "目标没有右移一位，与输入完全相同：模型只要把输入照抄一遍就是满分，什么也学不到。"),
            ("ids[1:].unfold", "ids[max_length:].unfold", "目标取成了下一个窗口；应当只比输入晚一个词元，每个位置预测紧跟着的那一个。"),
            ("self.input_ids[idx], self.target_ids[idx]", "self.target_ids[idx], self.input_ids[idx]", "输入和目标放反了，变成了拿后一个词元去预测前一个。"),
            ("ids = torch.tensor(token_ids)", "ids, stride = torch.tensor(token_ids), max_length", "stride 没有用上，窗口总是隔 max_length 取一个。"),
            ("ids = torch.tensor(token_ids)", "ids, stride = torch.tensor(token_ids), 1", "窗口每次只挪一个词元，stride 没有用上，样本数多出好几倍，而且几乎都是重复的。"),
            ("ids = torch.tensor(token_ids)", "ids = torch.tensor(token_ids, dtype=torch.float32)", "编号存成了小数；嵌入层拿编号当行号去查表，只收整数。"),
            ("ids[:-1].unfold", "ids.unfold", "切输入时没有去掉最后一个词元：恰好整除时会多出一个窗口，它的目标在文本之外，取那个样本就会越界。"),
            ("len(token_ids) <= max_length", "len(token_ids) < max_length", "差了一个：文本正好 max_length 个词元时，目标还缺最后一个，也应当报 ValueError。"),
            (', allowed_special={"<|endoftext|>"}', "", "没有写 allowed_special，文本里一出现 <|endoftext|>，分词器就报错。"),
            ("return len(self.input_ids)", "return self.input_ids.shape[1]", "__len__ 返回了窗口的长度 t；DataLoader 要的是样本数 n。"),
        ],
    ),
    dict(
        name="create_dataloader_v1",
        title="数据加载器",
        section="2.6",
        source="ch02/main",
        parts=["create_dataloader_v1"],
        needs=["GPTDatasetV1"],
        extra={},
        task="写一个函数 create_dataloader_v1(txt, batch_size=4, max_length=256, stride=128, shuffle=True, drop_last=True, num_workers=0)："
        "用 tiktoken.get_encoding(\"gpt2\") 得到的分词器和 GPTDatasetV1 切好样本，返回一个 DataLoader，其余的函数参数原样交给它。",
        blanks=["GPTDatasetV1", 'tiktoken.get_encoding("gpt2"), max_length, stride', "dataset, batch_size=batch_size, shuffle=shuffle, drop_last=drop_last, num_workers=num_workers"],
        cases=[("每一批", loader_batches), ("最后一批", loader_drop_last), ("打乱", loader_shuffle), ("默认值", loader_defaults)],
        mutants=[
            ('get_encoding("gpt2")', 'get_encoding("cl100k_base")', "用的不是 GPT-2 的分词器：cl100k_base 的词表有十万个词元，编号会超出 GPT-2 模型的嵌入表。"),
            ("max_length, stride)\n", "stride, max_length)\n", "max_length 和 stride 的次序写反了：窗口的长度变成了步幅，步幅变成了长度，也不会报错。"),
            ("dataset, batch_size=batch_size", "dataset", "没有把 batch_size 交给 DataLoader，它默认一批只有 1 个样本。"),
            ("shuffle=shuffle", "shuffle=True", "shuffle 写死成 True：验证集和核对数字时要按原来的次序，打乱了就对不上。"),
            (", shuffle=shuffle", "", "没有把 shuffle 交给 DataLoader，它默认不打乱，每一轮都是同样的几批。"),
            (", drop_last=drop_last", "", "没有把 drop_last 交给 DataLoader，它默认留着最后不满的一批，那一批的梯度噪声大，损失会突然跳一下。"),
            ("drop_last=drop_last", "drop_last=True", "drop_last 写死成 True，验证集也会少掉最后不满的一批。"),
            ("shuffle=True, drop_last=True, num", "shuffle=False, drop_last=False, num", "默认值与原书不同：训练是最常见的用法，所以默认要打乱，也要丢掉最后不满的一批。"),
        ],
    ),
]
