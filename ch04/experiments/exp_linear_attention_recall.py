"""第 4 章 · 实验　固定大小的黑板，训练起来比注意力差多少，快多少？

问题：　把注意力换成门控 DeltaNet：练过之后，问它前面记过的东西，答得对几成？语言模型的损失呢？多长的句子，它才比注意力快？
先猜：　8 × 8 的黑板，记 4 对键值、16 对键值，练过之后各答得对几成？擦旧的（delta）与直接往上加，练过之后谁好？（先想 10 秒，再运行）
看点：　① 左上图：16 对（黑板边长的两倍）时，注意力照样全对，黑板却装不下；② 一个键改写 4 次、只问最新的：注意力要在几个相同的键里挑，
        黑板要把旧的擦干净，谁学得会？③ 写文章：参数一样多，"学得快"与"最后低"分开看；
        ④ 右下图：SDPA 注意力的活是 t²，分块的 DeltaNet 是 t；短句子注意力快，交叉点在哪里，由这台机器量出来。
动手改：1. 把 GATE_BIAS 从 -4.0 改成 1.0（原书的初值）：一开始每个词元就忘掉 73%，还没学会读，要读的已经没有了，
           同样的步数，DeltaNet 答对的 4 对少了一半，16 对只剩两成左右。
        2. 把 TASKS 里的 (16, 1) 改成 (4, 1)：两个任务成了同一个，16 对的难处没有了。
        3. --chunk 2：分块的慢了好几倍，要更长的句子才赶得上注意力。

运行：
    python ch04/experiments/exp_linear_attention_recall.py               # 图片写到 ch04/outputs/
    python ch04/experiments/exp_linear_attention_recall.py --quick
    约 120 秒，0.8 GB（2 核 CPU）；训练过的存着，再运行就只量速度

形状记号：b 批大小　t 序列长度　c 一块里几个词元　d 嵌入维度　h 头数　k 每个头的维度　V 词表大小　n 几个键
"""

import argparse
import hashlib
import json
import math
import os
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"

# 改这里
TASKS = {"4 对": (4, 1), "16 对": (16, 1), "4 个键，各写 4 次": (4, 4)}  # 名字 → 几个键，各写几次（每次换一个值，只问最新的）
KEYS, VALUES = 32, 16  # 键和值各有几种；瞎猜，对 1/16
WIDTH, BOARD = 64, 8  # 嵌入维度；一个头的维度 k，也就是黑板的边长
WHEN = ["走到四分之一时", "最低的"]  # 学得快不快，最后低不低：两个问题
GATE_BIAS = -4.0  # 门的初值：softplus(-4) = 0.018，一开始每个词元只忘 2%


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


# region 沿用 ch04/main: LayerNorm, GELU, FeedForward, TransformerBlock, GPTModel
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


class FeedForward(nn.Module):
    """前馈网络（feed forward）：先升到 4 倍维度，过激活函数，再降回来。（详解见 ch04/main/example_03_feedforward.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(cfg["emb_dim"], 4 * cfg["emb_dim"]),
            GELU(),
            nn.Linear(4 * cfg["emb_dim"], cfg["emb_dim"]),
        )

    def forward(self, x):
        return self.layers(x)


class TransformerBlock(nn.Module):
    """Transformer 块：注意力 + 前馈网络，各自先归一化、再用残差连接加回去。（详解见 ch04/main/example_05_transformer_block.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.att = MultiHeadAttention(
            d_in=cfg["emb_dim"],
            d_out=cfg["emb_dim"],
            context_length=cfg["context_length"],
            num_heads=cfg["n_heads"],
            dropout=cfg["drop_rate"],
            qkv_bias=cfg["qkv_bias"],
        )
        self.ff = FeedForward(cfg)
        self.norm1 = LayerNorm(cfg["emb_dim"])
        self.norm2 = LayerNorm(cfg["emb_dim"])
        self.drop_shortcut = nn.Dropout(cfg["drop_rate"])

    def forward(self, x):
        shortcut = x
        x = self.norm1(x)
        x = self.att(x)  # (b, t, d)
        x = self.drop_shortcut(x)
        x = x + shortcut
        shortcut = x
        x = self.norm2(x)
        x = self.ff(x)  # (b, t, d)
        x = self.drop_shortcut(x)
        return x + shortcut


class GPTModel(nn.Module):
    """GPT：词嵌入 + 位置嵌入 → 一摞 Transformer 块 → 归一化 → 对每个位置给出整个词表的分数。（详解见 ch04/main/example_06_gpt_model.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.Sequential(*[TransformerBlock(cfg) for _ in range(cfg["n_layers"])])
        self.final_norm = LayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)

    def forward(self, in_idx):
        t = in_idx.shape[1]
        if t > self.pos_emb.num_embeddings:
            raise ValueError(f"输入有 {t} 个词元，超过了模型的上下文长度 {self.pos_emb.num_embeddings}")
        tok_embeds = self.tok_emb(in_idx)  # (b, t, d)
        pos_embeds = self.pos_emb(torch.arange(t, device=in_idx.device))  # (t, d)
        x = tok_embeds + pos_embeds  # (b, t, d)
        x = self.drop_emb(x)
        x = self.trf_blocks(x)  # (b, t, d)
        x = self.final_norm(x)
        return self.out_head(x)  # (b, t, V)


# endregion


# region 沿用 ch04/experiments/exp_norms_and_activations.py: RMSNorm
class RMSNorm(nn.Module):
    """均方根归一化：x ÷ √mean(x²) × scale。不减均值，也没有 shift，少算一半；Llama、Qwen 都用它。（详解见 ch04/experiments/exp_norms_and_activations.py）"""

    def __init__(self, emb_dim):
        super().__init__()
        self.eps = 1e-5
        self.scale = nn.Parameter(torch.ones(emb_dim))

    def forward(self, x):
        return self.scale * x / torch.sqrt(x.pow(2).mean(dim=-1, keepdim=True) + self.eps)


# endregion


# region 沿用 ch04/experiments/exp_gated_deltanet.py: recurrent_gated_delta_rule, chunked_gated_delta_rule, GatedDeltaNet, random_inputs
def recurrent_gated_delta_rule(queries, keys, values, alpha, beta, state):
    """门控 delta 规则，循环的写法：一个词元一个词元地改黑板、读黑板。（详解见 ch04/experiments/exp_gated_deltanet.py）"""
    outputs = []
    for i in range(queries.shape[2]):
        key = keys[:, :, i, None]  # (b, h, 1, k)
        state = state * alpha[:, :, i, None, None].exp()
        memory = key @ state  # (b, h, 1, k)
        delta = beta[:, :, i, None, None] * (values[:, :, i, None] - memory)  # (b, h, 1, k)
        state = state + key.transpose(2, 3) @ delta  # (b, h, k, k)
        outputs.append(queries[:, :, i, None] @ state)
    return torch.cat(outputs, dim=2), state  # (b, h, t, k)，(b, h, k, k)


def chunked_gated_delta_rule(queries, keys, values, alpha, beta, state, chunk_size):
    """门控 delta 规则，分块的写法：一块里的 c 个词元用矩阵乘法一次算完，块与块之间才接力。（详解见 ch04/experiments/exp_gated_deltanet.py）"""
    outputs = []
    for q, key, v, a, write in zip(*(each.split(chunk_size, dim=2) for each in (queries, keys, values, alpha, beta))):
        write = write[..., None]  # (b, h, c, 1)
        total = a.cumsum(dim=2)[..., None]  # (b, h, c, 1)
        future = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).triu(1)  # (c, c)
        decay = (total - total.transpose(2, 3)).masked_fill(future, -torch.inf).exp()  # (b, h, c, c)
        faded = total.exp()  # (b, h, c, 1)
        system = write * decay * (key @ key.transpose(2, 3))  # (b, h, c, c)
        wanted = write * (v - faded * (key @ state))  # (b, h, c, k)
        u = torch.linalg.solve_triangular(system, wanted, upper=False, unitriangular=True)  # (b, h, c, k)
        outputs.append(faded * (q @ state) + (decay * (q @ key.transpose(2, 3))) @ u)
        left = (total[:, :, -1:] - total).exp()  # (b, h, c, 1)
        state = faded[:, :, -1:] * state + (left * key).transpose(2, 3) @ u  # (b, h, k, k)
    return torch.cat(outputs, dim=2), state  # (b, h, t, k)，(b, h, k, k)


class GatedDeltaNet(nn.Module):
    """门控 DeltaNet：不存键和值，只留一块固定大小的黑板，用门控制忘多少、写多少、读出多少。（详解见 ch04/experiments/exp_gated_deltanet.py）"""

    def __init__(self, d_in, d_out, dropout, num_heads, qkv_bias=False, chunk_size=16):
        super().__init__()
        if d_out % num_heads != 0:
            raise ValueError(f"d_out={d_out} 不能被 num_heads={num_heads} 整除，无法平均分给每个头")
        if chunk_size < 1:
            raise ValueError(f"一块里至少有 1 个词元，不能是 {chunk_size}")
        self.d_out, self.num_heads, self.head_dim, self.chunk_size = d_out, num_heads, d_out // num_heads, chunk_size
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_gate = nn.Linear(d_in, d_out, bias=False)
        self.W_beta = nn.Linear(d_in, num_heads, bias=False)
        self.W_alpha = nn.Linear(d_in, num_heads, bias=False)
        self.dt_bias = nn.Parameter(torch.ones(num_heads))
        self.A_log = nn.Parameter(torch.zeros(num_heads))
        self.norm = RMSNorm(self.head_dim)
        self.out_proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)
        self.reset_cache()

    def reset_cache(self):
        self.cache_state = None

    def update(self, *inputs):
        return recurrent_gated_delta_rule(*inputs) if inputs[0].shape[2] == 1 else chunked_gated_delta_rule(*inputs, self.chunk_size)

    def forward(self, x, use_cache=False):
        b, t, _ = x.shape
        h, k = self.num_heads, self.head_dim
        queries = self.W_query(x).view(b, t, h, k).transpose(1, 2)  # (b, h, t, k)
        keys = self.W_key(x).view(b, t, h, k).transpose(1, 2)  # (b, h, t, k)
        values = self.W_value(x).view(b, t, h, k).transpose(1, 2)  # (b, h, t, k)
        queries, keys = nn.functional.normalize(queries, dim=-1) / k**0.5, nn.functional.normalize(keys, dim=-1)
        beta = torch.sigmoid(self.W_beta(x)).transpose(1, 2)  # (b, h, t)
        alpha = (-self.A_log.exp() * nn.functional.softplus(self.W_alpha(x) + self.dt_bias)).transpose(1, 2)  # (b, h, t)
        state = self.cache_state if use_cache and self.cache_state is not None else x.new_zeros(b, h, k, k)
        context, state = self.update(queries, keys, values, alpha, beta, state)
        if use_cache:
            self.cache_state = state
        gate = nn.functional.silu(self.W_gate(x).view(b, t, h, k))  # (b, t, h, k)
        context = (self.norm(context.transpose(1, 2)) * gate).reshape(b, t, self.d_out)  # (b, t, d_out)
        return self.out_proj(self.dropout(context))


def random_inputs(b, h, t, k):
    """随机造一组门控 delta 规则的输入，键已归一。（详解见 ch04/experiments/exp_gated_deltanet.py）"""
    queries, keys, values = torch.randn(3, b, h, t, k)
    gates = torch.rand(2, b, h, t)
    return [queries, nn.functional.normalize(keys, dim=-1), values, -gates[0], gates[1], torch.randn(b, h, k, k)]


# endregion


class GatedSum(GatedDeltaNet):
    """不擦旧的：直接往黑板上加，其余与门控 DeltaNet 相同，参数也相同。这就是带门的线性注意力。"""

    def update(self, queries, keys, values, alpha, beta, state):
        """整句一次算完：第 i 个读到的，是前面各个值按（键的点积 × 还剩几成）加起来。

        参数:
            queries, keys, values (Tensor): (b, h, t, k)
            alpha, beta (Tensor): 衰减的对数、写的力度，(b, h, t)
            state (Tensor): 开始时的黑板，训练时是空的，不用

        返回:
            tuple[Tensor, Tensor]: 读出来的，(b, h, t, k)；原样的黑板，(b, h, k, k)
        """
        total = alpha.cumsum(dim=2)[..., None]  # (b, h, t, 1)
        future = torch.ones(alpha.shape[2], alpha.shape[2], dtype=torch.bool).triu(1)  # (t, t)
        decay = (total - total.transpose(2, 3)).masked_fill(future, -torch.inf).exp()  # (b, h, t, t)
        return (decay * (queries @ keys.transpose(2, 3))) @ (beta[..., None] * values), state  # (b, h, t, k)，(b, h, k, k)


def make_mixer(kind, d_in, d_out, context_length, num_heads):
    """建一个"看前文"的层。

    参数:
        kind (str): "注意力"、"DeltaNet" 或 "直接加"
        d_in, d_out (int): 输入、输出维度
        context_length (int): 最多几个词元
        num_heads (int): 头数

    返回:
        nn.Module: (b, t, d_in) → (b, t, d_out)
    """
    if kind == "注意力":
        return MultiHeadAttention(d_in, d_out, context_length, 0.0, num_heads)
    mixer = (GatedSum if kind == "直接加" else GatedDeltaNet)(d_in, d_out, 0.0, num_heads, chunk_size=32)
    nn.init.constant_(mixer.dt_bias, GATE_BIAS)
    return mixer


class Recall(nn.Module):
    """记了再问：每个位置送进一个键和一个值，或者只送键（提问），一层"看前文"的层，直接猜值。没有残差：答案只能是从前文读来的。

    参数:
        kind (str): 哪一种层
        length (int): 写的和问的，一共几个位置
    """

    def __init__(self, kind, length):
        super().__init__()
        self.key_emb, self.value_emb, self.pos_emb = nn.Embedding(KEYS, WIDTH), nn.Embedding(VALUES + 1, WIDTH), nn.Embedding(length, WIDTH)
        nn.init.normal_(self.pos_emb.weight, std=0.1)
        self.norm1, self.norm2 = LayerNorm(WIDTH), LayerNorm(BOARD)
        self.mixer = make_mixer(kind, WIDTH, BOARD, length, 1)
        self.head = nn.Linear(BOARD, VALUES, bias=False)

    def forward(self, keys, values):
        """前向传播。

        参数:
            keys (Tensor): 键的编号，(b, t)
            values (Tensor): 值的编号，(b, t)；提问的位置是 VALUES

        返回:
            Tensor: 每个位置对各个值的分数，(b, t, VALUES)
        """
        x = self.key_emb(keys) + self.value_emb(values) + self.pos_emb.weight[: keys.shape[1]]  # (b, t, d)
        return self.head(self.norm2(self.mixer(self.norm1(x))))


def make_questions(b, n, times, generator):
    """出题：n 个键，每个写 times 次（值各不相干，先后打乱），再把 n 个键各问一遍。

    参数:
        b (int): 几道题
        n (int): 几个键
        times (int): 每个键写几次
        generator (torch.Generator): 随机数

    返回:
        tuple[Tensor, Tensor, Tensor]: 键，(b, t)；值，(b, t)；每个键最新的值，(b, n)
    """
    asked = torch.rand(b, KEYS, generator=generator).argsort(dim=1)[:, :n]  # (b, n)　从 KEYS 个里不重复地抽 n 个
    order = torch.rand(b, n * times, generator=generator).argsort(dim=1) % n  # (b, n·times)
    values = torch.randint(VALUES, (b, n * times), generator=generator)
    answers = torch.zeros(b, n, dtype=torch.long)
    for i in range(n * times):
        answers.scatter_(1, order[:, i : i + 1], values[:, i : i + 1])  # 后写的盖住先写的
    keys = torch.cat([asked.gather(1, order), asked], dim=1)  # (b, t)
    values = torch.cat([values, torch.full((b, n), VALUES)], dim=1)  # (b, t)
    return keys, values, answers


def train_recall(kind, n, times, steps, seed):
    """训练一个 Recall，每隔几步用同一份考卷考一次。

    参数:
        kind (str): 哪一种层
        n (int): 几个键
        times (int): 每个键写几次
        steps (int): 走几步
        seed (int): 初始权重和题目

    返回:
        tuple[list, float]: 曲线，每项是步数和考卷上的损失；最后答对几成
    """
    torch.manual_seed(seed)
    model, generator = Recall(kind, n * times + n), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    *paper, answers = make_questions(128, n, times, torch.Generator().manual_seed(0))
    curve = []
    for step in range(steps + 1):
        if step % max(1, steps // 20) == 0 or step == steps:
            with torch.no_grad():
                scores = model(*paper)[:, -n:]  # (b, n, VALUES)
            curve.append((step, nn.functional.cross_entropy(scores.flatten(0, 1), answers.flatten()).item()))
        *questions, targets = make_questions(16, n, times, generator)
        loss = nn.functional.cross_entropy(model(*questions)[:, -n:].flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return curve, (scores.argmax(dim=-1) == answers).float().mean().item()


def make_gpt(kind, vocab_size, extra=36):
    """两层的 GPT，注意力可以换成 DeltaNet，参数几乎一样多。

    参数:
        kind (str): "注意力" 或 "DeltaNet"
        vocab_size (int): 词表大小
        extra (int): 注意力的前馈网络多几个中间的神经元：DeltaNet 的几个门有多少参数，就补多少

    返回:
        GPTModel: 模型
    """
    cfg = {"vocab_size": vocab_size, "context_length": 32, "emb_dim": 64, "n_heads": 4, "n_layers": 2, "drop_rate": 0.0, "qkv_bias": False}
    model = GPTModel(cfg)
    for block in model.trf_blocks:
        if kind == "注意力":
            block.ff.layers = nn.Sequential(nn.Linear(64, 256 + extra), GELU(), nn.Linear(256 + extra, 64))
        else:
            block.att = make_mixer(kind, 64, 64, 32, 4)
    return model


# region 沿用 ch04/experiments/exp_seed_noise.py: encode_characters, bigram_loss, validation_loss, train, milestones, side_by_side, paired_interval, verdict, draw_differences
def encode_characters(text):
    """按字符编号，前九成作训练集，后一成作验证集。（详解见 ch04/experiments/exp_seed_noise.py）"""
    chars = sorted(set(text))
    number = {char: i for i, char in enumerate(chars)}
    ids = torch.tensor([number[char] for char in text])
    return ids[: len(ids) * 9 // 10], ids[len(ids) * 9 // 10 :], chars


def bigram_loss(train_ids, val_ids, vocab_size):
    """只看前一个字符、靠数数猜下一个，验证损失是多少：不比它低，就什么上下文也没有学到。（详解见 ch04/experiments/exp_seed_noise.py）"""
    pairs = train_ids[:-1] * vocab_size + train_ids[1:]
    counts = torch.bincount(pairs, minlength=vocab_size**2).view(vocab_size, vocab_size) + 0.1  # (V, V)
    probs = counts / counts.sum(dim=1, keepdim=True)
    return -probs[val_ids[:-1], val_ids[1:]].log().mean().item()


def validation_loss(model, ids, context_length):
    """整个验证集的平均损失：首尾相接地切成若干段，一批算完。（详解见 ch04/experiments/exp_seed_noise.py）"""
    model.eval()
    n = (len(ids) - 1) // context_length * context_length
    inputs, targets = ids[:n].view(-1, context_length), ids[1 : n + 1]  # (b, t)，(b·t,)
    with torch.no_grad():
        return nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets).item()


def train(model, train_ids, val_ids, context_length, steps, seed, extra_loss=None):
    """训练一个小模型，记下验证损失的曲线。（详解见 ch04/experiments/exp_seed_noise.py）"""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.1)
    curve = [(0, validation_loss(model, val_ids, context_length))]
    for step in range(1, steps + 1):
        model.train()
        starts = torch.randint(len(train_ids) - context_length, (16, 1), generator=generator)  # (b, 1)
        window = train_ids[starts + torch.arange(context_length + 1)]  # (b, t + 1)
        loss = nn.functional.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        if extra_loss is not None:
            loss = loss + extra_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % max(1, steps // 20) == 0 or step == steps:
            curve.append((step, validation_loss(model, val_ids, context_length)))
    return curve


def milestones(curve):
    """一条曲线，两个问题：学得快不快，最后低不低。（详解见 ch04/experiments/exp_seed_noise.py）"""
    return curve[len(curve) // 4][1], min(loss for _, loss in curve)


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


def draw_differences(axis, differences, quick=False):
    """一行一种变体：每个种子的差是一个点，粗线是 99% 区间，竖线是 0。（详解见 ch04/experiments/exp_seed_noise.py）"""
    for row, values in enumerate(differences.values()):
        axis.scatter(values, [row] * len(values), s=14, color="tab:blue", alpha=0.6, zorder=3)
        if not quick:
            mean, half = paired_interval(values)
            color = "0.5" if abs(mean) <= half else ("tab:green" if mean < 0 else "tab:red")
            axis.plot([mean - half, mean + half], [row, row], linewidth=6, alpha=0.5, color=color, solid_capstyle="butt")
    axis.axvline(0, color="black", linewidth=1)
    axis.set_yticks(range(len(differences)), list(differences))
    axis.set_ylim(len(differences) - 0.5, -0.5)


# endregion


def train_once(task, kind, steps, seed):
    """训练一次：记了再问，或者写文章。

    参数:
        task (tuple 或 str): 几个键、各写几次；或文本文件
        kind (str): 哪一种层
        steps (int): 走几步
        seed (int): 初始权重和批的次序

    返回:
        tuple[list, float]: 曲线；最后答对几成（写文章的没有，是 0）
    """
    if not isinstance(task, str):
        return train_recall(kind, *task, steps, seed)
    train_ids, val_ids, chars = encode_characters(Path(task).read_text(encoding="utf-8"))
    torch.manual_seed(seed)
    return train(make_gpt(kind, len(chars)), train_ids, val_ids, 32, steps, seed), 0.0


def milliseconds_by_length(lengths, chunk_size, rounds=7, longest_loop=2048):
    """循环、分块、SDPA 注意力各用多少毫秒：三种轮流量，谁也不专挑安静的时候。

    参数:
        lengths (list[int]): 序列长度
        chunk_size (int): 一块里几个词元
        rounds (int): 量几轮
        longest_loop (int): 比它长的，循环就不量了

    返回:
        dict[str, dict[int, list[float]]]: 名字 → 长度 → 下四分位、中位、上四分位
    """
    rules = {
        "循环": recurrent_gated_delta_rule,
        "分块": lambda *inputs: chunked_gated_delta_rule(*inputs, chunk_size),
        "SDPA 注意力": lambda queries, keys, values, *_: nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True),
    }
    result = {name: {} for name in rules}
    for t in lengths:
        inputs = random_inputs(1, 4, t, 32)
        spent = {name: [] for name in rules if name != "循环" or t <= longest_loop}
        for turn in range(rounds + 1):
            for name, times in spent.items():
                start = time.perf_counter()
                with torch.no_grad():
                    rules[name](*inputs)
                if turn > 0:  # 第一轮是热身
                    times.append(1000 * (time.perf_counter() - start))
        for name, times in spent.items():
            result[name][t] = statistics.quantiles(times, n=4, method="inclusive")
    return result


def crossing(attention, chunked):
    """多长的句子，分块的才比注意力快：两边的四分位区间不相交才算数。

    参数:
        attention, chunked (dict): 长度 → 下四分位、中位、上四分位

    返回:
        tuple[int, int]: 到多长为止，还是注意力快；从多长起，一直是分块的快。没有就是 0
    """
    slower = [t for t in attention if attention[t][2] < chunked[t][0]]
    faster = [t for t in attention if all(attention[longer][0] > chunked[longer][2] for longer in attention if longer >= t)]
    return max(slower, default=0), min(faster, default=0)


def draw(gaps, curves, bigram, speed, quick, path):
    """四幅图：记了再问的差、写文章的曲线、写文章的差、用时。

    参数:
        gaps (dict): "记" 和 "写" → 名字 → 每个种子的差
        curves (dict): 名字 → 每个种子写文章的曲线
        bigram (float): 只看前一个字符的损失
        speed (dict): milliseconds_by_length 的结果
        quick (bool): True 时不画区间
        path (Path): 图片写到哪里
    """
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.6), layout="constrained")
    draw_differences(axes[0, 0], gaps["记"], quick)
    draw_differences(axes[1, 0], gaps["写"], quick)
    axes[0, 0].set_title("记了再问")
    axes[1, 0].set_title("写文章：DeltaNet 减注意力，参数一样多")
    for axis in axes[:, 0]:
        axis.set_xlabel("损失的差（往左是更低）")
    for (name, each), color in zip(curves.items(), ["tab:gray", "tab:blue"]):
        for i, curve in enumerate(each):
            axes[0, 1].plot(*zip(*curve[1:]), color=color, linewidth=1, alpha=0.7, label=name if i == 0 else None)
    axes[0, 1].axhline(bigram, color="0.5", linestyle="--", label="只看前一个字符，数数")
    axes[0, 1].set_title("写文章")
    axes[0, 1].set_xlabel("训练步数")
    axes[0, 1].set_ylabel("验证损失")
    for name, rows in speed.items():
        low, middle, high = zip(*rows.values())
        axes[1, 1].plot(list(rows), middle, "o-", label=name)
        axes[1, 1].fill_between(list(rows), low, high, alpha=0.3)
    axes[1, 1].set_xscale("log", base=2)
    lengths = list(speed["分块"])
    axes[1, 1].set_xticks(lengths, lengths)
    axes[1, 1].set_yscale("log")
    axes[1, 1].set_xlabel("序列长度（对数刻度）")
    axes[1, 1].set_ylabel("毫秒（对数刻度；色带是四分位）")
    for axis in axes[:, 1]:
        axis.legend()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


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


def main():
    """记了再问、写文章，各训练几个种子，配对比较；再量三种算法的用时。"""
    parser = argparse.ArgumentParser(description="实验　固定大小的黑板与注意力：训练之后，谁记得住，谁快")
    parser.add_argument("--chunk", type=int, default=64, help="量速度时，一块里几个词元（默认：64）")
    parser.add_argument("--steps", type=int, default=400, help="每次训练几步（默认：400）")
    parser.add_argument("--seeds", type=int, default=5, help="几个种子，5 到 10（默认：5）")
    parser.add_argument("--seed", type=int, default=123, help="第一个种子是它乘 1000（默认：123）")
    parser.add_argument("--quick", action="store_true", help="每次只训练 1 步：看流程，不下结论")
    args = parser.parse_args()
    for name, low, high in [("chunk", 1, 1024), ("steps", 1, 100000), ("seeds", 5, 10), ("seed", 0, 2**50)]:
        if not low <= getattr(args, name) <= high:
            parser.error(f"--{name} 应在 {low} 到 {high} 之间，不能是 {getattr(args, name)}")
    torch.set_num_threads(1)
    steps, seeds = 1 if args.quick else args.steps, [args.seed * 1000 + i for i in range(args.seeds)]
    path = str(find_data("the-verdict.txt", "story-en.txt"))
    train_ids, val_ids, chars = encode_characters(Path(path).read_text(encoding="utf-8"))
    bigram = bigram_loss(train_ids, val_ids, len(chars))
    kinds = ["注意力", "DeltaNet", "直接加"]
    pairs = [(task, kind) for task in TASKS.values() for kind in kinds] + [(path, kind) for kind in kinds[:2]]
    cases = [(task, kind, steps, seed) for task, kind in dict.fromkeys(pairs) for seed in seeds]
    print(f"数据　{path}　{len(train_ids) + len(val_ids):,} 个字符，{len(chars)} 种；{len(seeds)} 个种子，共训练 {len(cases)} 次")
    results = side_by_side(train_once, cases, OUTPUTS / "exp_linear_attention_recall", workers=1 if args.quick else None)
    per_seed = {pair: [results[(*pair, steps, seed)] for seed in seeds] for pair in pairs}

    def compare(pair, base):
        """两种做法，早的差和最低的差，各一串。"""
        ends = [[milestones(curve) for curve, _ in per_seed[each]] for each in (pair, base)]
        return [[mine[which] - other[which] for mine, other in zip(*ends)] for which in (0, 1)]

    def report(title, *differences):
        """打印一行：早的和最低的，各是平均的差、区间、结论。"""
        line = [f"{name} {paired_interval(each)[0]:+.3f} ± {paired_interval(each)[1]:.3f}" + ("" if args.quick else f" {verdict(each)}") for name, each in zip(WHEN, differences)]
        print(f"  {title}　" + "，".join(line) + ("（训练太短：看流程，不下结论）" if args.quick else ""))

    print(f"\n记了再问　一层，黑板 {BOARD} × {BOARD}，训练 {steps} 步；瞎猜对 {1 / VALUES:.0%}，损失 {math.log(VALUES):.2f}\n最后答对几成　　　　　　" + "　".join(kinds))
    for name, task in TASKS.items():
        print(f"  {name.ljust(10, '　')}" + "　　".join(f"{statistics.mean(right for _, right in per_seed[task, kind]):6.0%}" for kind in kinds))
    gaps = {"记": {}, "写": {}}
    print("损失的差，同一个种子配对，99% 区间：")
    for name, task in TASKS.items():
        for kind, base in [("DeltaNet", "注意力"), ("直接加", "DeltaNet")]:
            early, low = compare((task, kind), (task, base))
            gaps["记"][f"{name}：\n{kind} 减 {base}"] = low
            report(f"{name}，{kind} 减 {base}", early, low)

    early, low = compare((path, "DeltaNet"), (path, "注意力"))
    gaps["写"] = dict(zip(WHEN, (early, low)))
    best = {kind: [min(loss for _, loss in curve) for curve, _ in per_seed[path, kind]] for kind in kinds[:2]}
    counts = {kind: sum(p.numel() for p in make_gpt(kind, len(chars)).parameters()) for kind in kinds[:2]}
    print(f"\n写文章　2 层，d = 64，4 个头，上下文 32，训练 {steps} 步；只看前一个字符、数数，损失是 {bigram:.3f}")
    for kind in kinds[:2]:
        print(f"  {kind.ljust(8)}　参数 {counts[kind]:,}　最低的验证损失　" + "　".join(f"{loss:.3f}" for loss in best[kind]))
    report("DeltaNet 减注意力", early, low)

    lengths = [128, 256] if args.quick else [128, 256, 512, 1024, 2048, 4096, 8192]
    speed = milliseconds_by_length(lengths, args.chunk, 2 if args.quick else 7)
    print(f"\n用时（毫秒；4 个头，k = 32，一块 {args.chunk} 个；中位数，括号里是四分位）")
    for t in lengths:
        print(f"  {t:5} 个词元　" + "　".join(f"{name} {rows[t][1]:.2f}（{rows[t][0]:.2f}–{rows[t][2]:.2f}）" for name, rows in speed.items() if t in rows))
    slower, faster = crossing(speed["SDPA 注意力"], speed["分块"])
    if not args.quick:
        print(f"  到 {slower} 个词元，还是 SDPA 注意力快；" if slower else "  没有一个长度，注意力明显地快；", end="")
        print(f"从 {faster} 个词元起，一直是分块的快；其余的四分位相交，分不出。" if faster else "量到的长度里，分块的还没有一直快的。")
    draw(gaps, {kind: [curve for curve, _ in per_seed[path, kind]] for kind in kinds[:2]}, bigram, speed, args.quick, OUTPUTS / "linear_attention_recall.png")
    print(f"图片已写到 {OUTPUTS / 'linear_attention_recall.png'}")

    print("\n这个数字对吗？")
    keys, values, answers = make_questions(4, 8, 4, torch.Generator().manual_seed(args.seed))
    newest = [[values[i, :32][keys[i, :32] == key][-1].item() for key in keys[i, 32:]] for i in range(4)]
    confirm("题目的答案，是同一个键最后一次写的值", newest == answers.tolist(), "先写的盖住了后写的")
    inputs = random_inputs(2, 3, 50, 16)
    one, two = recurrent_gated_delta_rule(*inputs)[0], chunked_gated_delta_rule(*inputs, args.chunk)[0]
    confirm(f"循环与分块的输出相同（最多差 {(one - two).abs().max():.0e}）", torch.allclose(one, two, atol=1e-4), "块内的衰减算错了一格")
    spread = abs(counts["DeltaNet"] / counts["注意力"] - 1)
    confirm(f"写文章的两种模型，参数相差 {spread:.2%}，不到 0.1%", spread < 1e-3, "前馈网络补的神经元个数不对")
    start = per_seed[TASKS["4 对"], "注意力"][0][0][0][1]
    confirm(f"没训练时损失 {start:.2f} 接近 ln {VALUES} = {math.log(VALUES):.2f}", abs(start - math.log(VALUES)) < 0.6, "初始权重太大")


if __name__ == "__main__":
    main()
