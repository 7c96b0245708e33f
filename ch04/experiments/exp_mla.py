"""第 4 章 · 实验　多头潜在注意力（MLA）：缓存里只存一个压缩包，用的时候再展开

问题：　缓存一样大，压成一个包（MLA）好，还是几个头合用一份键和值（GQA）好？展开要花时间，会不会得不偿失？
先猜：　2d = 128 个数压成 16 个：训练好的模型直接压，压了再练几步，从头就带着压缩训练，哪个亏得少？（先想 10 秒，再运行）
看点：　① r = d 时直接压一点不亏：键和值来自同一个 d 维的输入，本来就只有 d 个自由度；② 左上图：压得狠了，直接压的损失涨上去，接着练 5% 的步数，
        又拉回来一大半；③ 左下图：缓存同样大，MLA 减去 GQA 在 0 的哪一边？r = d 的两行里什么也没丢，若还高，怪的就不是压缩，是两个矩阵连乘学得慢；
        ④ 右上图：老实展开最慢；把展开的矩阵并进查询（吸收），才又小又快；⑤ 键上一旋转（RoPE），就吸收不了；另留一小段专管旋转，才又行了。
动手改：1. --latent 16 8：压得更狠，各训练一遍（8 个数没有对应的 GQA：一份键值最少也要存 16 个）。
        2. 把 compress 里的三处 :r 换成 -r:（留下最小的几个方向）："没有更小的了"变成 ✗；r = 64 的自查还是 ✓，因为那时全留着。
        3. 在 absorb 一支的末尾加一行 scores = scores * (self.head_dim / self.latent_dim) ** 0.5（以为该除以 √r）：自查变成 ✗，
           缩放只看查询和键原本的维度 k。
        4. 把 rope_errors 里的 extra=4 换成 extra=0：专管旋转的那一段没有了，吸收照样成立，最后一行的分数却不再随位置变。

运行：
    python ch04/experiments/exp_mla.py               # 图片写到 ch04/outputs/
    python ch04/experiments/exp_mla.py --quick
    约 130 秒，1.0 GB（2 核 CPU）；训练过的存着，再运行几秒钟就出结果

形状记号：b 批大小　t 这次送进来几个词元　s 看得见几个（缓存里的加新来的）　d 嵌入维度　h 头数　g 键和值有几份　k 每个头的维度　r 压缩后几个数　V 词表大小
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
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
CONFIG = {"context_length": 32, "emb_dim": 64, "n_heads": 8, "n_layers": 2, "drop_rate": 0.0, "qkv_bias": False}  # 词表、份数或 r 另给


def mla_bytes_total(batch, context_length, n_layers, latent_dim, bytes_per_elem):
    """MLA 的缓存占多少字节：每层、每个词元只存 r 个数，键和值都从它展开，所以不乘 2。"""
    return batch * context_length * n_layers * latent_dim * bytes_per_elem


class MultiHeadLatentAttention(nn.Module):
    """多头潜在注意力（multi-head latent attention）：先把 x 压成 r 个数，缓存它；键和值都由它展开。

        x ─ W_DKV ─ c（r 个数，存进缓存）─┬─ W_UK ─ 键（每个头都不同）
                                          └─ W_UV ─ 值

    与 GQA 的差别：GQA 让几个头共用一份键，MLA 的每个头仍有自己的键，只是都从同一个压缩包里算出来。
    DeepSeek 的完整版另有一小段带旋转位置编码的键，见 rope_errors；GPT-2 的位置在嵌入里，用不着。

    参数:
        d_in, d_out (int): 输入、输出维度；d_out 必须能被 num_heads 整除
        dropout, num_heads (float, int): 注意力权重的丢弃率；头数 h
        qkv_bias (bool): 各个投影带不带偏置；带偏置时不能吸收
        latent_dim (int 或 None): r；None 表示取 max(16, d_out // 8)，与原书相同

    异常:
        ValueError: d_out 不能被 num_heads 整除，或 latent_dim 小于 1

    出处: 原书仓库 ch04/05_mla；DeepSeek-V2，2024
    """

    def __init__(self, d_in, d_out, dropout, num_heads, qkv_bias=False, latent_dim=None):
        super().__init__()
        if d_out % num_heads != 0:
            raise ValueError(f"d_out={d_out} 不能被 num_heads={num_heads} 整除，无法平均分给每个头")
        if latent_dim is not None and latent_dim < 1:
            raise ValueError(f"压缩后至少留 1 个数，不能是 {latent_dim}")
        self.d_out, self.num_heads, self.head_dim = d_out, num_heads, d_out // num_heads
        self.latent_dim = latent_dim or max(16, d_out // 8)
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_DKV = nn.Linear(d_in, self.latent_dim, bias=qkv_bias)  # D：往下压
        self.W_UK = nn.Linear(self.latent_dim, d_out, bias=qkv_bias)  # U：往上展开成键
        self.W_UV = nn.Linear(self.latent_dim, d_out, bias=qkv_bias)  # 展开成值
        self.out_proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)
        self.absorb = False  # 生成时可以打开：结果相同，不必展开缓存
        self.reset_cache()

    def reset_cache(self):
        """忘掉缓存，换一段话之前要调用。"""
        self.cache_c_kv = None

    def forward(self, x, use_cache=False):
        """前向传播。

        参数:
            x (Tensor): (b, t, d)
            use_cache (bool): 接着缓存里的词元往下算，并把新的压缩包存进去

        返回:
            Tensor: (b, t, d_out)
        """
        b, t, _ = x.shape
        h, k = self.num_heads, self.head_dim
        queries = self.W_query(x).view(b, t, h, k).transpose(1, 2)  # (b, h, t, k)
        latent = self.W_DKV(x)  # (b, t, r)
        if use_cache:
            if self.cache_c_kv is not None:
                latent = torch.cat([self.cache_c_kv, latent], dim=1)  # (b, s, r)
            self.cache_c_kv = latent  # 只存这一样，键和值都不存
        s = latent.shape[1]

        if self.absorb:
            # 结合律：q · (W_UK c) = (W_UKᵀ q) · c。把 W_UK 并进查询，只有 t 个查询要变；不必把缓存里的 s 个压缩包全部展开。
            absorbed = queries @ self.W_UK.weight.view(h, k, self.latent_dim)  # (b, h, t, r)
            scores = absorbed.reshape(b, h * t, self.latent_dim) @ latent.transpose(1, 2)  # (b, h·t, s)　各头问的是同一批 c，一次乘完
            scores = scores.view(b, h, t, s)  # (b, h, t, s)
        else:
            keys = self.W_UK(latent).view(b, s, h, k).transpose(1, 2)  # (b, h, s, k)
            values = self.W_UV(latent).view(b, s, h, k).transpose(1, 2)  # (b, h, s, k)
            scores = queries @ keys.transpose(2, 3)  # (b, h, t, s)

        # 因果掩码：新词元前面还有 s − t 个旧的，所以对角线右移 s − t。
        scores.masked_fill_(torch.ones(t, s, dtype=torch.bool, device=x.device).triu(s - t + 1), -torch.inf)
        weights = self.dropout(torch.softmax(scores / self.head_dim**0.5, dim=-1))  # (b, h, t, s)
        if self.absorb:
            # 值也一样：先按权重把压缩包加起来，再展开这一个，而不是展开 s 个再加。
            mixed = (weights.view(b, h * t, s) @ latent).view(b, h, t, self.latent_dim)  # (b, h, t, r)
            context = mixed @ self.W_UV.weight.view(h, k, self.latent_dim).transpose(1, 2)  # (b, h, t, k)
        else:
            context = weights @ values  # (b, h, t, k)
        context = context.transpose(1, 2).reshape(b, t, self.d_out)  # (b, t, d_out)
        return self.out_proj(context)


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


# region 沿用 ch04/experiments/exp_gqa.py: calc_kv_bytes_total, GroupedQueryAttention, decode_step, prepare_steps, interleaved, compare_times, describe
def calc_kv_bytes_total(batch, context_length, emb_dim, n_heads, n_kv_heads, n_layers, bytes_per_elem):
    """KV 缓存写满时占多少字节：每层、每个词元、每份键值（一共 n_kv_heads 份），存一个键和一个值，各 k 个数。（详解见 ch04/experiments/exp_gqa.py）"""
    return batch * context_length * n_layers * n_kv_heads * -(-emb_dim // n_heads) * 2 * bytes_per_elem


class GroupedQueryAttention(nn.Module):
    """分组查询注意力（grouped-query attention）：h 个查询头分成 g 组，同组的头合用一份键和值。（详解见 ch04/experiments/exp_gqa.py）"""

    def __init__(self, d_in, d_out, dropout, num_heads, num_kv_groups, qkv_bias=False):
        super().__init__()
        if d_out % num_heads != 0:
            raise ValueError(f"d_out={d_out} 不能被 num_heads={num_heads} 整除，无法平均分给每个头")
        if num_kv_groups < 1 or num_heads % num_kv_groups != 0:
            raise ValueError(f"{num_heads} 个头不能平均分成 {num_kv_groups} 组")
        self.d_out, self.num_heads, self.num_kv_groups = d_out, num_heads, num_kv_groups
        self.head_dim = d_out // num_heads
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, num_kv_groups * self.head_dim, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, num_kv_groups * self.head_dim, bias=qkv_bias)
        self.out_proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)
        self.reset_cache()

    def reset_cache(self):
        self.cache_k = self.cache_v = None

    def forward(self, x, use_cache=False):
        b, t, _ = x.shape
        h, g, k = self.num_heads, self.num_kv_groups, self.head_dim
        queries = self.W_query(x).view(b, t, h, k).transpose(1, 2)  # (b, h, t, k)
        keys = self.W_key(x).view(b, t, g, k).transpose(1, 2)  # (b, g, t, k)
        values = self.W_value(x).view(b, t, g, k).transpose(1, 2)  # (b, g, t, k)
        if use_cache:
            if self.cache_k is not None:
                keys = torch.cat([self.cache_k, keys], dim=2)  # (b, g, s, k)
                values = torch.cat([self.cache_v, values], dim=2)  # (b, g, s, k)
            self.cache_k, self.cache_v = keys, values
        s = keys.shape[2]
        queries = queries.reshape(b, g, h // g * t, k)  # (b, g, h/g·t, k)
        scores = (queries @ keys.transpose(2, 3)).view(b, h, t, s)  # (b, h, t, s)
        scores.masked_fill_(torch.ones(t, s, dtype=torch.bool, device=x.device).triu(s - t + 1), -torch.inf)
        weights = self.dropout(torch.softmax(scores / k**0.5, dim=-1))  # (b, h, t, s)
        context = weights.reshape(b, g, h // g * t, s) @ values  # (b, g, h/g·t, k)
        context = context.view(b, h, t, k).transpose(1, 2).reshape(b, t, self.d_out)  # (b, t, d_out)
        return self.out_proj(context)


def decode_step(attention, cache, x, length):
    """缓存里已有 length 个词元时，再走一步。缓存是预先分好的，新的键和值写在末尾：不像 torch.cat，每步把旧的全抄一遍。（详解见 ch04/experiments/exp_gqa.py）"""
    b, h, g, k = len(x), attention.num_heads, attention.num_kv_groups, attention.head_dim
    cache[0, :, :, length] = attention.W_key(x).view(b, g, k)  # (b, g, k)
    cache[1, :, :, length] = attention.W_value(x).view(b, g, k)  # (b, g, k)
    queries = attention.W_query(x).view(b, g, h // g, k)  # (b, g, h/g, k)
    context = nn.functional.scaled_dot_product_attention(queries, cache[0], cache[1])  # (b, g, h/g, k)
    return attention.out_proj(context.reshape(b, 1, h * k))  # (b, 1, d)


def prepare_steps(attentions, length=4096):
    """每层注意力配上预先分好、写满的缓存，返回"再走一步"：名字 → 函数。（详解见 ch04/experiments/exp_gqa.py）"""
    return {
        name: partial(decode_step, each, torch.randn(2, 1, each.num_kv_groups, length + 1, each.head_dim), torch.randn(1, 1, each.d_out), length)
        for name, each in attentions.items()
    }


def interleaved(steps, rounds):
    """几种做法轮流各做一次，做许多轮：机器忽快忽慢，大家碰上的一样多。（详解见 ch04/experiments/exp_gqa.py）"""
    torch.set_num_threads(1)
    times = {name: [] for name in steps}
    with torch.no_grad():
        for _ in range(rounds + 3):
            for name, step in steps.items():
                start = time.perf_counter()
                step()
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.quantiles(each[3:], n=4) for name, each in times.items()}


def compare_times(quartiles, base):
    """两种做法的用时该怎么说：中间一半完全错开才算数，有重叠就是分不出。（详解见 ch04/experiments/exp_gqa.py）"""
    return "更快" if quartiles[2] < base[0] else "更慢" if quartiles[0] > base[2] else "分不出"


def describe(differences, quick):
    """差的平均、区间的半宽和结论，印成一小段；训练太短时只印平均。（详解见 ch04/experiments/exp_gqa.py）"""
    return f"{statistics.mean(differences):+.3f}" if quick else "{:+.3f} ± {:.3f} {}".format(*paired_interval(differences), verdict(differences))


# endregion


def build_model(vocab_size, n_kv_groups, latent_dim, seed):
    """建一个 GPT，再把每个块的注意力换掉：同一个种子下，注意力以外的初始权重都相同，比起来更准。

    参数:
        vocab_size, seed (int): 词表大小；初始权重的种子
        n_kv_groups (int): GQA 有几份键和值；等于头数就是多头注意力
        latent_dim (int 或 None): 给了 r 就换成 MLA

    返回:
        GPTModel: 建好的
    """
    torch.manual_seed(seed)
    model, d, h = GPTModel(CONFIG | {"vocab_size": vocab_size}), CONFIG["emb_dim"], CONFIG["n_heads"]
    for block in model.trf_blocks:
        block.att = MultiHeadLatentAttention(d, d, 0.0, h, latent_dim=latent_dim) if latent_dim else GroupedQueryAttention(d, d, 0.0, h, n_kv_groups)
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


def compress(attention, r):
    """把训练好的多头注意力压成 MLA，不再训练：对键和值的权重做奇异值分解（SVD），只留最大的 r 个方向。

    键和值的权重叠在一起是 (2d, d)，秩最多是 d：r = d 时分毫不差，r 更小时是最接近的近似。

    参数:
        attention (nn.Module): 训练好的多头注意力，不带偏置
        r (int): 压缩后几个数，1 到 d

    返回:
        MultiHeadLatentAttention: 压好的
    """
    d = attention.d_out
    latent = MultiHeadLatentAttention(attention.W_key.in_features, d, 0.0, attention.num_heads, latent_dim=r)
    stacked = torch.cat([attention.W_key.weight, attention.W_value.weight])  # (2d, d)
    left, sizes, right = torch.linalg.svd(stacked.detach(), full_matrices=False)  # (2d, d)，(d,)，(d, d)　sizes 从大到小
    up = left[:, :r] * sizes[:r]  # (2d, r)
    state = {"W_query.weight": attention.W_query.weight, "W_DKV.weight": right[:r], "W_UK.weight": up[:d], "W_UV.weight": up[d:]}
    latent.load_state_dict(state | {f"out_proj.{name}": each for name, each in attention.out_proj.state_dict().items()})
    return latent


def train_once(path, n_kv_groups, latent_dim, sizes, steps, seed):
    """训练一次；sizes 里有数时，再把训练好的压成那么大，记下压完的损失，和接着练二十分之一的步数之后的损失。

    参数:
        path (str): 文本文件
        n_kv_groups (int): 键和值有几份；用 MLA 时不起作用
        latent_dim (int 或 None): MLA 的 r；None 表示用 GQA
        sizes (tuple[int]): 训练完再压成几个数
        steps, seed (int): 走几步；初始权重和批的次序

    返回:
        dict: curve 是 train 的结果；squeezed 是 r → 刚压完、接着练完的两个损失
    """
    train_ids, val_ids, chars = encode_characters(Path(path).read_text(encoding="utf-8"))
    model = build_model(len(chars), n_kv_groups, latent_dim, seed)
    result = {"curve": train(model, train_ids, val_ids, 32, steps, seed), "squeezed": {}}
    for r in sizes:
        small = build_model(len(chars), 1, r, seed)
        small.load_state_dict(model.state_dict(), strict=False)  # 注意力以外的照搬
        for block, original in zip(small.trf_blocks, model.trf_blocks):
            block.att = compress(original.att, r)
        again = train(small, train_ids, val_ids, 32, max(1, steps // 20), seed + 500)  # 接着看到的批与训练时的不同，所以种子加 500
        result["squeezed"][r] = [again[0][1], again[-1][1]]
    return result


def latent_step(attention, cache, x, length, absorb):
    """缓存里已有 length 个压缩包时，MLA 再走一步；缓存是预先分好的，与 decode_step 一样公平。

    参数:
        attention (MultiHeadLatentAttention): 注意力
        cache, x (Tensor): 压缩包，(b, s, r)，s = length + 1；新的词元，(b, 1, d)
        length (int): 已有几个词元
        absorb (bool): True 是吸收，False 是老实展开

    返回:
        Tensor: (b, 1, d)
    """
    (b, s, r), h, k = cache.shape, attention.num_heads, attention.head_dim
    cache[:, length] = attention.W_DKV(x)[:, 0]
    queries = attention.W_query(x).view(b, h, 1, k)  # (b, h, 1, k)
    if absorb:
        # 吸收之后就是多查询注意力：h 个 r 维的查询，问同一份"键"；"值"也是它。缓存只读一遍，什么也不用展开。
        absorbed = (queries @ attention.W_UK.weight.view(h, k, r)).transpose(1, 2)  # (b, 1, h, r)
        latent = cache[:, None]  # (b, 1, s, r)
        mixed = nn.functional.scaled_dot_product_attention(absorbed, latent, latent, scale=k**-0.5)  # (b, 1, h, r)
        context = mixed.transpose(1, 2) @ attention.W_UV.weight.view(h, k, r).transpose(1, 2)  # (b, h, 1, k)
    else:
        keys = attention.W_UK(cache).view(b, s, h, k).transpose(1, 2)  # (b, h, s, k)
        values = attention.W_UV(cache).view(b, s, h, k).transpose(1, 2)  # (b, h, s, k)
        context = nn.functional.scaled_dot_product_attention(queries, keys, values)  # (b, h, 1, k)
    return attention.out_proj(context.transpose(1, 2).reshape(b, 1, h * k))  # (b, 1, d)


def rope(x, start=0):
    """旋转位置编码（RoPE）：第 m 个词元的每一对数，转 m 倍的角度；点积只看两个词元隔多远。

    参数:
        x (Tensor): (t, k)，k 是偶数
        start (int): 第一个词元的位置

    返回:
        Tensor: 转过的，(t, k)
    """
    t, k = x.shape
    angles = torch.arange(start, start + t)[:, None] * 10000 ** (-torch.arange(0, k, 2, dtype=x.dtype) / max(1, k))  # (t, k/2)
    even, odd = x[:, 0::2], x[:, 1::2]
    return torch.stack([even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos()], dim=-1).flatten(1)  # (t, k)


def rope_errors(t=8, k=16, r=12, extra=4):
    """为什么 MLA 要把位置另放一小段（解耦的 RoPE，decoupled RoPE）：三种键，吸收之后分数错多少。

    不旋转　　　　　q_m · (W c_n) = (Wᵀ q_m) · c_n：W 并进查询，一步也不差。
    整个键都旋转　　q_m · R(n−m) W c_n：W 前面夹了一个随距离变的旋转，没有哪一个固定的矩阵可以先并好。
    另留一小段旋转　分数 = (Wᵀ q_m) · c_n + 旋转的一小段之间的点积：前一半照样吸收，后一半的键很短，转好了直接存。

    参数:
        t, k, r (int): 几个词元；每个头的维度；压缩后几个数
        extra (int): 专管旋转的那一段有几维，各个头合用，每个词元多存这么多个数

    返回:
        dict[str, float]: 名字 → 误差；最后一项是加上旋转的一小段，分数变了多少（0 就是不知道位置）
    """
    queries, latent, up = (torch.randn(*shape, dtype=torch.float64) for shape in [(t, k), (t, r), (k, r)])
    small_q, small_k = torch.randn(2, t, extra, dtype=torch.float64)  # (t, extra)，(t, extra)
    plain = queries @ (latent @ up.T).T  # (t, t)
    rotated = rope(queries) @ rope(latent @ up.T).T  # (t, t)　整个键都旋转
    # 想要不差，只好每个距离各并一个矩阵：t 个查询变成 t × t 个，与展开一样贵。
    turned = torch.stack([rope(queries[m : m + 1].expand(t, k), m - t + 1).flip(0) @ up for m in range(t)])  # (t, t, r)

    def split(start=0):
        return (queries @ up) @ latent.T + rope(small_q, start) @ rope(small_k, start).T  # (t, t)

    whole = torch.cat([queries, rope(small_q)], dim=1) @ torch.cat([latent @ up.T, rope(small_k)], dim=1).T  # (t, t)　展开了算
    return {
        "不旋转，吸收": (plain - (queries @ up) @ latent.T).abs().max().item(),
        "整个键都旋转，吸收": (rotated - (rope(queries) @ up) @ latent.T).abs().max().item(),
        "整个键都旋转，每个距离各吸收一次": (rotated - (turned * latent).sum(dim=-1)).abs().max().item(),
        "另留一小段旋转，吸收": (whole - split()).abs().max().item(),
        "整段挪后 100 个位置": (split() - split(100)).abs().max().item(),
        "旋转的那一段让分数变了": (split() - plain).abs().max().item(),
    }


def draw(base, losses, times, gaps, squeezed, quick, path):
    """左上：损失随缓存的变化；右上：走一步的用时；左下：缓存同样大时的差；右下：直接压与带着压缩训练的差。

    参数:
        base, losses (float, dict): 多头注意力的平均损失；做法 → 每个词元存几个数 → 每个种子的损失
        times (dict): 做法 → 毫秒的四分位数
        gaps, squeezed (dict): 名字 → 每个种子的差：MLA 减去参照，压的减去带着压缩训练的
        quick, path (bool, Path): True 时不画区间；图片写到哪里
    """
    figure, ((size, step), (left, right)) = plt.subplots(2, 2, figsize=(11, 7.4), layout="constrained")
    size.axhline(base, color="0.5", linestyle="--", label="多头注意力（存 128 个数）")
    for row, (label, points) in enumerate(losses.items()):
        xs = sorted(points)
        size.plot(xs, [statistics.mean(points[r]) for r in xs], "o-", color=f"C{row}", label=label)
        for r in xs:
            size.scatter([r] * len(points[r]), points[r], s=6, color=f"C{row}", alpha=0.5)
    ticks = sorted({r for points in losses.values() for r in points})
    size.set_xscale("log", base=2)
    size.set_xticks(ticks, [str(r) for r in ticks])
    size.set(xlabel="每层每个词元存几个数", ylabel="训练完的验证损失")
    size.legend()
    for row, (name, (low, median, high)) in enumerate(times.items()):
        step.bar(row, median, color=["tab:gray", "tab:blue", "tab:green", "tab:red"][row])
        step.errorbar(row, median, [[median - low], [high - median]], color="black", capsize=5)
        step.annotate(f" {median:.2g}", (row, high), ha="center", va="bottom")
    step.set_xticks(range(len(times)), list(times))
    step.set(title="缓存里有 4096 个词元，一层走一步（短线：中间一半）", ylabel="毫秒")
    for axis, differences, title in [(left, gaps, "MLA 减去缓存同样大的 GQA（或 MHA）"), (right, squeezed, "训练好再压，减去带着压缩训练")]:
        draw_differences(axis, differences, quick)
        axis.set(title=title, xlabel="损失的差（往左是更低）")
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
    """同一个小模型，缓存里的数从 128 个减到 r 个：与 GQA 比，与训练好再压比；展开与吸收，各快多少；旋转放在哪里。"""
    parser = argparse.ArgumentParser(description="实验　多头潜在注意力：缓存里只存一个压缩包")
    parser.add_argument("--latent", type=int, nargs="+", default=[64, 16], help="带着压缩训练的，压缩后几个数，可以给几个（默认：64 16）")
    parser.add_argument("--steps", type=int, default=400, help="每个模型训练几步（默认：400）")
    parser.add_argument("--seeds", type=int, default=5, help="用几个种子，5 到 10（默认：5）")
    parser.add_argument("--seed", type=int, default=123, help="第一个种子；几个种子是它乘 1000 再加 0、1、2……（默认：123）")
    parser.add_argument("--quick", action="store_true", help="两个种子，每次只训练 4 步：看流程，不下结论")
    args = parser.parse_args()
    d, h = CONFIG["emb_dim"], CONFIG["n_heads"]
    for name, low, high in [("steps", 1, 100000), ("seeds", 5, 10), ("seed", 0, 10**9)]:
        if not low <= getattr(args, name) <= high:
            parser.error(f"--{name} 应在 {low} 到 {high} 之间，不能是 {getattr(args, name)}")
    if wrong := [r for r in args.latent if not 1 <= r <= d]:
        parser.error(f"--latent 应在 1 到 {d}（嵌入维度）之间，不能是 {wrong[0]}：压成更多的数就不叫压缩了")
    steps, seeds = min(args.steps, 4) if args.quick else args.steps, [args.seed * 1000 + i for i in range(2 if args.quick else args.seeds)]
    path = find_data("the-verdict.txt", "story-en.txt")
    train_ids, val_ids, chars = encode_characters(path.read_text(encoding="utf-8"))
    print(f"数据　{path}　{len(train_ids) + len(val_ids):,} 个字符，{len(chars)} 种；只看前一个字符、数数，损失 {bigram_loss(train_ids, val_ids, len(chars)):.3f}")
    print(f"模型　2 层，d = {d}，{h} 个头，上下文 32；{len(seeds)} 个种子，各训练 {steps} 步；不压缩时每层每个词元存 {2 * d} 个数")

    latents = sorted(set(args.latent), reverse=True)
    copies = {r: r * h // (2 * d) for r in latents if r < d and r * h % (2 * d) == 0 and h % (r * h // (2 * d)) == 0}  # 缓存一样大的 GQA 有几份
    variants = {"MHA": (h, None, tuple(sorted({*latents, d, d // 2, d // 8}, reverse=True))), **{f"GQA {r}": (each, None, ()) for r, each in copies.items()}, **{f"MLA {r}": (1, r, ()) for r in latents}}
    cases = {(str(path), *each, steps, seed): name for name, each in variants.items() for seed in seeds}
    results = side_by_side(train_once, list(cases), OUTPUTS / "exp_mla", workers=1 if args.quick else None)
    runs = {name: [result for case, result in results.items() if cases[case] == name] for name in variants}
    ends = {name: [run["curve"][-1][1] for run in each] for name, each in runs.items()}
    now, later = ({r: [run["squeezed"][str(r)][which] for run in runs["MHA"]] for r in variants["MHA"][2]} for which in (0, 1))

    few = max(1, steps // 20)
    print(f"\n① 存几个数　写满的缓存　公式算的　带着压缩训练　训练好再压　压了再练 {few} 步　缓存同样大的 GQA（训练完的平均损失）")
    print(f"{2 * d:9}{calc_kv_bytes_total(1, 32, d, h, h, 2, 4):13,} B（不压缩）{statistics.mean(ends['MHA']):14.3f}")
    exact = same = True
    for r in now:
        attention, x = MultiHeadLatentAttention(d, d, 0.0, h, latent_dim=r), torch.randn(1, 32, d)
        expanded, attention.absorb = attention(x), True
        cached = torch.cat([attention(part, use_cache=True) for part in x.split(1, dim=1)], dim=1)  # (b, t, d)　吸收，一个词元一个词元地来
        same &= torch.allclose(cached, expanded, atol=1e-5)
        measured, formula = 2 * attention.cache_c_kv.nbytes, mla_bytes_total(1, 32, 2, r, 4)  # 两层，写满 32 个词元
        exact &= measured == formula
        fresh = f"{statistics.mean(ends[f'MLA {r}']):12.3f}" if r in latents else f"{'—':>12}"
        rival = f"{statistics.mean(ends[f'GQA {r}']):15.3f}（{copies[r]} 份）" if r in copies else ""
        print(f"{r:9}{measured:13,} B{formula:9,} B{fresh}{statistics.mean(now[r]):15.3f}{statistics.mean(later[r]):15.3f}{rival}")

    print("\n② 同一个种子配对的差；± 是 99% 区间的半宽" + ("\n训练太短：看流程，不下结论" if args.quick else "，比它小的差，这里看不见"))
    gaps, squeezed = {}, {}
    for r in latents:
        base, title = ("GQA", f"减去 {copies[r]} 份的 GQA") if r in copies else ("MHA", "减去 MHA")
        early, low = ([milestones(a["curve"])[which] - milestones(b["curve"])[which] for a, b in zip(runs[f"MLA {r}"], runs[f"GQA {r}" if r in copies else "MHA"])] for which in (0, 1))
        gaps |= {f"r = {r}（减 {base}）\n四分之一时": early, f"r = {r}（减 {base}）\n最低的": low}
        print(f"  MLA r = {r:2}，{title}　走到四分之一时 {describe(early, args.quick)}　最低的 {describe(low, args.quick)}")
    for r in latents:
        for title, losses in [("直接压", now[r]), ("压了再练", later[r])]:
            squeezed[f"r = {r}\n{title}"] = differences = [a - b for a, b in zip(losses, ends[f"MLA {r}"])]
            print(f"  r = {r:2}，训练好{title}，减去带着压缩训练　{describe(differences, args.quick)}" + (f"（多练了 {few} 步）" if title == "压了再练" else ""))

    attention, packets, x = MultiHeadLatentAttention(1024, 1024, 0.0, 16, latent_dim=256), torch.randn(1, 4097, 256), torch.randn(1, 1, 1024)
    todo = prepare_steps({f"{title}\n{128 * each} 个数": GroupedQueryAttention(1024, 1024, 0.0, 16, each) for title, each in [("MHA", 16), ("GQA 2 份", 2)]})
    todo |= {f"MLA {name}\n256 个数": partial(latent_step, attention, packets, x, 4096, absorb) for name, absorb in [("吸收", True), ("展开", False)]}
    times = interleaved(todo, 3 if args.quick else 21)
    base = times[next(iter(times))]
    print("\n③ 大一些（d = 1024，16 个头，r = 256，缓存 4096 个词元），一层走一步（毫秒，中位数和中间一半）：")
    for name, (low, median, high) in times.items():
        says = "" if args.quick or times[name] is base else f"　比不压缩{compare_times(times[name], base)}（{median / base[1]:.2f} 倍）"
        print(f"  {name.replace(chr(10), '，')}　{median:.2f}（{low:.2f}–{high:.2f}）{says}")
    mha, gqa, mla = calc_kv_bytes_total(1, 8192, 2048, 24, 24, 48, 2), calc_kv_bytes_total(1, 8192, 2048, 24, 6, 48, 2), mla_bytes_total(1, 8192, 48, 1024, 2)
    print("放大到书中的配置（48 层，d = 2048，24 个头，8192 个词元，bfloat16，r = 1024）：")
    print(f"  MHA {mha / 1e9:.2f} GB　GQA（6 份）{gqa / 1e9:.2f} GB　MLA {mla / 1e9:.2f} GB，小 {mha / mla:.2f} 倍，省 {1 - mla / mha:.2%}")

    torch.manual_seed(args.seed)
    errors = rope_errors()
    print("\n④ 吸收以后，分数最多错多少")
    print("\n".join(f"  {name}　{error:.1e}" for name, error in errors.items()))
    print(f"  DeepSeek-V2 每层每个词元存 512 + 64 = 576 个数，128 维的头，相当于 {576 / (2 * 128)} 份键值的 GQA；它有 128 个头。")
    draw(statistics.mean(ends["MHA"]), {"训练好再压": now, "压了再练": later, "带着压缩训练": {r: ends[f"MLA {r}"] for r in latents}, "GQA": {r: ends[f"GQA {r}"] for r in copies}}, times, gaps, squeezed, args.quick, OUTPUTS / "mla.png")
    print(f"图片已写到 {OUTPUTS / 'mla.png'}")

    print("\n这个数字对吗？")
    worst = max(abs(a - b) for a, b in zip(now[d], ends["MHA"]))
    confirm(f"压到 d = {d} 个数，与原来的多头注意力损失相同（{len(seeds)} 个种子，最多差 {worst:.0e}）", worst < 1e-3, "叠权重时键和值的次序反了，或漏乘了奇异值")
    whole = MultiHeadAttention(64, 64, 32, 0.0, 8)
    small, stacked = compress(whole, 16), torch.cat([whole.W_key.weight, whole.W_value.weight])  # (2d, d)
    error = (torch.cat([small.W_UK.weight, small.W_UV.weight]) @ small.W_DKV.weight - stacked).norm()
    confirm("压到 16 个数，权重的误差正好等于扔掉的奇异值：没有更小的了", abs(error - torch.linalg.svdvals(stacked)[16:].norm()) < 1e-4, "留下的不是最大的几个方向")
    confirm("实测的缓存与公式一个字节不差", exact, "存的是展开之后的键和值，那就一点没省")
    confirm("带着缓存、吸收着一个一个地来，与展开了一次算完，输出相同", same, "缩放用成了 √r，W_UK 拆头的次序不对，或掩码没有右移")
    attention, x = MultiHeadLatentAttention(64, 64, 0.0, 8, latent_dim=16), torch.randn(2, 17, 64)
    expected = attention(x)[:, -1:]
    right = [torch.allclose(latent_step(attention, attention.W_DKV(x).detach(), x[:, -1:], 16, absorb), expected, atol=1e-5) for absorb in (True, False)]
    confirm("预先分好的缓存走一步，展开、吸收都与 forward 相同", all(right), "新的压缩包写错了位置，或缩放忘了写成 k**-0.5")
    small, large = [list(errors.values())[i] for i in (0, 2, 3, 4)], errors["整个键都旋转，吸收"]
    confirm("不旋转、另留一小段旋转，吸收都不差；整个键都旋转就不行", max(small) < 1e-9 < 1e-3 < large, "旋转写在了 W_UK 的前面")
    book = [f"{mha / 1e9:.2f}", f"{gqa / 1e9:.2f}", f"{mla / 1e9:.2f}", f"{mha / mla:.2f}", f"{1 - mla / mha:.2%}"]
    confirm("书中的配置：3.25、0.81、0.81 GB，4.03 倍，75.19%，与原书仓库相同", book == ["3.25", "0.81", "0.81", "4.03", "75.19%"], "k 没有向上取整，或 MLA 多乘了 2")


if __name__ == "__main__":
    main()
