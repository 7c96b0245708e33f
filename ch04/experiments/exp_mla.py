"""第 4 章 · 实验　多头潜在注意力（MLA）：缓存里只存一个压缩包，用的时候再展开

问题：　键和值一共 2d 个数，压成 r 个再存，r 小到多少，损失才开始变大？展开要花时间，会不会得不偿失？
先猜：　2d = 128 个数压成 16 个，缓存小 8 倍；训练好的模型直接压，和从头就带着压缩训练，哪个亏得少？（先想 10 秒，再运行）
看点：　① r = d 时一点不亏：键和值来自同一个 d 维的输入，本来就只有 d 个自由度；② 左图两条线在哪里交叉：压得轻，训练好再压就行；压得狠，压缩要在训练时就在场；
        ③ 右图：老老实实展开，比不压缩还慢；把展开的矩阵并进查询（吸收），才又小又快。
动手改：1. --latent 64 32 16 8 4 2：一直压到 2 个数，看损失从哪里开始失控。
        2. 把 compress 里的三处 :r 换成 -r:（留下最小的几个方向）：左图里「训练好再压缩」的那条线抬起来。
        3. 在 absorb 一支的末尾加一行 scores = scores * (self.head_dim / self.latent_dim) ** 0.5（以为该除以 √r）：自查变成 ✗，
           缩放只看查询和键原本的维度 k。

运行：
    python ch04/experiments/exp_mla.py               # 图片写到 ch04/outputs/
    python ch04/experiments/exp_mla.py --quick
    约 65 秒，0.5 GB（2 核 CPU）

形状记号：b 批大小　t 这次送进来几个词元　s 看得见几个（缓存里的加新来的）　d 嵌入维度　h 头数　k 每个头的维度　r 压缩后几个数　V 词表大小
"""

import argparse
import os
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"


def kv_bytes_total(batch, context_length, emb_dim, n_heads, n_kv_heads, n_layers, bytes_per_elem):
    """普通的 KV 缓存占多少字节：每层、每个词元、每份键值，存一个键和一个值，各 k 个数。

    参数:
        batch (int): 批大小
        context_length (int): 缓存里有几个词元
        emb_dim (int): 嵌入维度 d
        n_heads (int): 头数 h；除不尽时 k 向上取整，与书的估算器相同（2048 / 24 得 86）
        n_kv_heads (int): 键和值有几份
        n_layers (int): 层数
        bytes_per_elem (int): 每个数几个字节

    返回:
        int: 字节数
    """
    return batch * context_length * n_layers * n_kv_heads * -(-emb_dim // n_heads) * 2 * bytes_per_elem


def mla_bytes_total(batch, context_length, n_layers, latent_dim, bytes_per_elem):
    """MLA 的缓存占多少字节：每层、每个词元只存 r 个数，键和值都从它展开，所以不乘 2。

    参数:
        batch (int): 批大小
        context_length (int): 缓存里有几个词元
        n_layers (int): 层数
        latent_dim (int): 压缩后几个数 r
        bytes_per_elem (int): 每个数几个字节

    返回:
        int: 字节数
    """
    return batch * context_length * n_layers * latent_dim * bytes_per_elem


class MultiHeadLatentAttention(nn.Module):
    """多头潜在注意力（multi-head latent attention）：先把 x 压成 r 个数，缓存它；键和值都由它展开。

        x ─ W_DKV ─ c（r 个数，存进缓存）─┬─ W_UK ─ 键（每个头都不同）
                                          └─ W_UV ─ 值

    与 GQA 的差别：GQA 让几个头共用一份键，MLA 的每个头仍有自己的键，只是都从同一个压缩包里算出来。
    DeepSeek 的完整版另有一小段带旋转位置编码的键，这里没有：GPT-2 的位置在嵌入里，用不着。

    参数:
        d_in (int): 输入维度
        d_out (int): 输出维度，必须能被 num_heads 整除
        dropout (float): 注意力权重的丢弃率
        num_heads (int): 头数 h
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


# region 沿用 ch04/main: LayerNorm, GELU, FeedForward
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


# endregion


# region 改写 ch04/main: TransformerBlock, GPTModel
class TransformerBlock(nn.Module):
    """Transformer 块，注意力可以换成 MLA。（原版详解见 ch04/main/example_05_transformer_block.py）"""

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
        if cfg["latent_dim"] is not None:  # 改：给了 r 就换成 MLA；None 是原来的多头注意力，作参照
            self.att = MultiHeadLatentAttention(cfg["emb_dim"], cfg["emb_dim"], cfg["drop_rate"], cfg["n_heads"], cfg["qkv_bias"], cfg["latent_dim"])  # 改：同上
        self.ff = FeedForward(cfg)
        self.norm1 = LayerNorm(cfg["emb_dim"])
        self.norm2 = LayerNorm(cfg["emb_dim"])
        self.drop_shortcut = nn.Dropout(cfg["drop_rate"])

    def forward(self, x, use_cache=False):  # 改：要不要用缓存，一路传下去
        shortcut = x
        x = self.norm1(x)
        x = self.att(x, use_cache) if use_cache else self.att(x)  # (b, t, d)　改：参照用的多头注意力没有缓存，不认识第二个参数
        x = self.drop_shortcut(x)
        x = x + shortcut
        shortcut = x
        x = self.norm2(x)
        x = self.ff(x)  # (b, t, d)
        x = self.drop_shortcut(x)
        return x + shortcut


class GPTModel(nn.Module):
    """GPT，注意力可以换成 MLA，可以带缓存。（原版详解见 ch04/main/example_06_gpt_model.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.Sequential(*[TransformerBlock(cfg) for _ in range(cfg["n_layers"])])
        self.final_norm = LayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)
        self.current_pos = 0  # 改：缓存里有几个词元，新词元的位置从它数起

    # 改：换一段话之前，每层的缓存和位置一起清零
    def reset_kv_cache(self):
        for block in self.trf_blocks:
            block.att.reset_cache()
        self.current_pos = 0

    def forward(self, in_idx, use_cache=False):  # 改：要不要用缓存
        t = in_idx.shape[1]
        start = self.current_pos if use_cache else 0  # 改：有缓存时，位置接着数
        if start + t > self.pos_emb.num_embeddings:  # 改：连缓存里的一起数
            raise ValueError(f"输入有 {start + t} 个词元，超过了模型的上下文长度 {self.pos_emb.num_embeddings}")  # 改：同上
        tok_embeds = self.tok_emb(in_idx)  # (b, t, d)
        pos_embeds = self.pos_emb(torch.arange(start, start + t, device=in_idx.device))  # (t, d)　改：从 start 数起
        self.current_pos = start + t if use_cache else self.current_pos  # 改：记下数到哪里了
        x = tok_embeds + pos_embeds  # (b, t, d)
        x = self.drop_emb(x)
        for block in self.trf_blocks:  # 改：要传第二个参数，nn.Sequential 只传一个，所以自己一块一块地调用
            x = block(x, use_cache)  # (b, t, d)
        x = self.final_norm(x)
        return self.out_head(x)  # (b, t, V)


# endregion


# region 沿用 ch04/experiments/exp_gqa.py: cache_error, encode_characters, validation_loss, train, seed_noise
def cache_error(model, ids):
    """缓存对不对：一个词元一个词元地带着缓存送进去，与一次送完相比，logits 最多差多少。（详解见 ch04/experiments/exp_gqa.py）"""
    model.eval()
    model.reset_kv_cache()
    with torch.no_grad():
        cached = torch.cat([model(token, use_cache=True) for token in ids.split(1, dim=1)], dim=1)  # (b, t, V)
        return (cached - model(ids)).abs().max().item()


def encode_characters(text):
    """按字符编号，前九成作训练集，后一成作验证集。（详解见 ch04/experiments/exp_gqa.py）"""
    chars = sorted(set(text))
    number = {char: i for i, char in enumerate(chars)}
    ids = torch.tensor([number[char] for char in text])
    return ids[: len(ids) * 9 // 10], ids[len(ids) * 9 // 10 :], chars


def validation_loss(model, ids, context_length):
    """整个验证集的平均损失：首尾相接地切成若干段，一批算完。（详解见 ch04/experiments/exp_gqa.py）"""
    model.eval()
    n = (len(ids) - 1) // context_length * context_length
    inputs, targets = ids[:n].view(-1, context_length), ids[1 : n + 1]  # (b, t)，(b·t,)
    with torch.no_grad():
        return nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets).item()


def train(model, train_ids, val_ids, context_length, steps, title, extra_loss=None):
    """训练一个小模型，记下验证损失的曲线。（详解见 ch04/experiments/exp_gqa.py）"""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    curve = [(0, validation_loss(model, val_ids, context_length))]
    for step in tqdm(range(1, steps + 1), desc=title, unit="步", leave=False, disable=None):
        model.train()
        starts = torch.randint(len(train_ids) - context_length, (16, 1), generator=generator)  # (b, 1)
        window = train_ids[starts + torch.arange(context_length + 1)]  # (b, t + 1)
        loss = nn.functional.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        if extra_loss is not None:
            loss = loss + extra_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % max(1, steps // 12) == 0 or step == steps:
            curve.append((step, validation_loss(model, val_ids, context_length)))
    return curve


def seed_noise(curve, other):
    """同样的结构只换初始权重的种子，验证损失会差多少：比这还小的差别，不能算在结构头上。（详解见 ch04/experiments/exp_gqa.py）"""
    return max(abs(first[1] - second[1]) for first, second in list(zip(curve, other))[len(curve) // 2 :])


# endregion


def compress(attention, r):
    """把训练好的多头注意力压成 MLA，不再训练：对键和值的权重做奇异值分解（SVD），只留最大的 r 个方向。

    键和值的权重叠在一起是 (2d, d)，秩最多是 d：r = d 时分毫不差，r 更小时是最接近的近似。

    参数:
        attention (MultiHeadAttention): 训练好的多头注意力，不带偏置
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


def decode_milliseconds(length=4096, d=1024, h=16, r=256):
    """缓存里已有 length 个词元时，一层注意力再生成一个词元要几毫秒。

    参数:
        length (int): 缓存里有几个词元
        d (int): 嵌入维度
        h (int): 头数
        r (int): 压缩后几个数

    返回:
        dict[str, float]: 不压缩、老实展开、吸收三种做法各几毫秒，取中位数
    """
    attention = MultiHeadLatentAttention(d, d, 0.0, h, latent_dim=r)
    x, cached = torch.randn(1, 1, d), torch.randn(1, length, r)
    keys = values = torch.randn(1, h, length, d // h)  # 不压缩：键和值现成，直接用

    def plain():
        query, key, value = (linear(x).view(1, 1, h, d // h).transpose(1, 2) for linear in (attention.W_query, attention.out_proj, attention.out_proj))
        all_keys = torch.cat([keys, key], dim=2)  # (1, h, s, k)
        weights = torch.softmax(query @ all_keys.transpose(2, 3) / (d // h) ** 0.5, dim=-1)  # (1, h, 1, s)
        return attention.out_proj((weights @ torch.cat([values, value], dim=2)).transpose(1, 2).reshape(1, 1, d))  # (1, 1, d)

    def latent(absorb):
        attention.cache_c_kv, attention.absorb = cached, absorb
        return attention(x, use_cache=True)

    result = {}
    with torch.no_grad():
        for name, step in [("不压缩", plain), ("展开", lambda: latent(False)), ("吸收", lambda: latent(True))]:
            seconds = []
            for _ in range(9):
                start = time.perf_counter()
                step()
                seconds.append(time.perf_counter() - start)
            result[name] = sorted(seconds)[len(seconds) // 2] * 1000
    return result


def draw(squeezed, trained, base, noise, milliseconds, path):
    """左图：损失随 r 的变化；右图：三种做法一步要几毫秒。

    参数:
        squeezed (dict): r → 训练好再压缩的验证损失
        trained (dict): r → 从头训练的验证损失
        base (float): 多头注意力的验证损失
        noise (float): seed_noise 的结果，画成灰带
        milliseconds (dict): decode_milliseconds 的结果
        path (Path): 图片写到哪里
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.2), layout="constrained")
    left.axhspan(base - noise, base + noise, color="0.85", label="多头注意力 ± 换个种子的差别")
    for curve, marker, label in [(squeezed, "s--", "训练好再压缩"), (trained, "o-", "带着压缩训练")]:
        left.plot(*zip(*sorted(curve.items())), marker, label=label)
    left.set_xscale("log", base=2)
    left.set_xticks(sorted(squeezed), [str(r) for r in sorted(squeezed)])
    left.set_xlabel("每层每个词元存几个数（不压缩是 128 个）")
    left.set_ylabel("验证损失")
    left.legend()
    names = ["不压缩\n（存 2048 个数）", "MLA，老实展开\n（存 256 个数）", "MLA，吸收\n（存 256 个数）"]
    right.bar_label(right.bar(names, list(milliseconds.values()), color=["tab:gray", "tab:red", "tab:green"]), fmt="%.1f")
    right.set_ylabel("缓存 4096 个词元时，一层走一步（毫秒）")
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
    """同一个小模型，缓存压到 r 个数：训练好再压、带着压缩训练，各亏多少；展开与吸收，各快多少。"""
    parser = argparse.ArgumentParser(description="实验　多头潜在注意力：缓存里只存一个压缩包")
    parser.add_argument("--latent", type=int, nargs="+", default=[32, 16, 8, 4], help="压缩后几个数，可以给几个，各训练一个模型（默认：32 16 8 4）")
    parser.add_argument("--steps", type=int, default=400, help="每个模型训练几步（默认：400）")
    parser.add_argument("--seed", type=int, default=123, help="初始权重的随机种子（默认：123）")
    parser.add_argument("--quick", action="store_true", help="只训练 30 步，几秒钟走完全程")
    args = parser.parse_args()
    context, d = 64, 64
    if not 1 <= args.steps <= 100000:
        parser.error(f"--steps 应在 1 到 100000 之间，不能是 {args.steps}")
    if not 0 <= args.seed < 2**62:
        parser.error(f"--seed 应是 0 到 2 的 62 次方之间的整数，不能是 {args.seed}")
    if wrong := [r for r in args.latent if not 1 <= r <= d]:
        parser.error(f"--latent 应在 1 到 {d}（嵌入维度）之间，不能是 {wrong[0]}：压成更多的数就不叫压缩了")
    steps = min(args.steps, 30) if args.quick else args.steps
    path = find_data("the-verdict.txt", "story-en.txt")
    train_ids, val_ids, chars = encode_characters(path.read_text(encoding="utf-8"))
    print(f"数据　{path}　{len(train_ids) + len(val_ids):,} 个字符，{len(chars)} 种")
    print(f"模型　2 层，d = 64，8 个头，上下文 {context}；每个训练 {steps} 步，不压缩时每层每个词元存 128 个数")
    cfg = {"vocab_size": len(chars), "context_length": context, "emb_dim": d, "n_heads": 8, "n_layers": 2, "drop_rate": 0.0, "qkv_bias": False}

    models, curves = {}, {}
    for r in [None, *dict.fromkeys(args.latent)]:
        torch.manual_seed(args.seed)
        models[r] = GPTModel(cfg | {"latent_dim": r})
        curves[r] = train(models[r], train_ids, val_ids, context, steps, f"r = {r}" if r else "多头注意力")
    torch.manual_seed(args.seed + 1)
    other = train(GPTModel(cfg | {"latent_dim": None}), train_ids, val_ids, context, steps, "换个种子")
    base, noise = curves[None][-1][1], seed_noise(curves[None], other)
    trained = {r: curve[-1][1] for r, curve in curves.items() if r}

    squeezed = {}
    for r in sorted({*args.latent, d}):
        small = GPTModel(cfg | {"latent_dim": r})
        small.load_state_dict(models[None].state_dict(), strict=False)  # 注意力以外的都照搬
        for block, original in zip(small.trf_blocks, models[None].trf_blocks):
            block.att = compress(original.att, r)
        squeezed[r] = validation_loss(small, val_ids, context)

    print(f"\n存几个数　写满的缓存　公式算的　比不压缩　带着压缩训练　训练好再压缩\n{2 * d:8}{kv_bytes_total(1, context, d, 8, 8, 2, 4):13,} B（没有压缩）{1:10.3f}{base:13.3f}")
    exact, same, absorbed = True, True, True
    for r in sorted(trained, reverse=True):
        model, logits = models[r], []
        for absorb in (True, False):
            for block in model.trf_blocks:
                block.att.absorb = absorb
            with torch.no_grad():
                logits.append(model(val_ids[None, :context]))
        same &= cache_error(model, val_ids[None, :context]) < 1e-3  # 写满了上下文，接着量真的缓存
        measured, formula = sum(block.att.cache_c_kv.nbytes for block in model.trf_blocks), mla_bytes_total(1, context, 2, r, 4)
        exact &= measured == formula
        absorbed &= torch.allclose(*logits, atol=1e-3)
        print(f"{r:8}{measured:13,} B{formula:9,} B{measured / kv_bytes_total(1, context, d, 8, 8, 2, 4):10.3f}{trained[r]:13.3f}{squeezed[r]:14.3f}")
    print(f"换个种子的多头注意力：{other[-1][1]:.3f}；训练后半程里两个种子最多差 {noise:.3f}")

    milliseconds = decode_milliseconds()
    print("\n再大一些（d = 1024，16 个头，r = 256，缓存 4096 个词元），一层走一步：" + "　".join(f"{name} {each:.1f} ms" for name, each in milliseconds.items()))
    mha, gqa, mla = kv_bytes_total(1, 8192, 2048, 24, 24, 48, 2), kv_bytes_total(1, 8192, 2048, 24, 6, 48, 2), mla_bytes_total(1, 8192, 48, 1024, 2)
    print("放大到书中的配置（48 层，d = 2048，24 个头，8192 个词元，bfloat16，r = 1024）：")
    print(f"  MHA {mha / 1e9:.2f} GB　GQA（6 份）{gqa / 1e9:.2f} GB　MLA {mla / 1e9:.2f} GB，小 {mha / mla:.2f} 倍，省 {1 - mla / mha:.2%}")
    draw(squeezed, trained, base, noise, milliseconds, OUTPUTS / "mla.png")
    print(f"图片已写到 {OUTPUTS / 'mla.png'}")

    print("\n所以（都是这一次量的）：")
    for name, losses in [("带着压缩训练", trained), ("训练好再压", squeezed)]:
        fine = [r for r in losses if losses[r] - base <= noise]
        print(f"  {name}：" + (f"压到 {min(fine)} 个数（小 {2 * d / min(fine):.3g} 倍），损失的增加还没有超过换个种子的差别。" if fine else "每一档的损失都比不压缩高，而且超过换个种子的差别。"))
    least = min(trained)
    print(f"  压到 {least} 个数：训练好再压，损失 {squeezed[least] - base:+.3f}；带着压缩训练，{trained[least] - base:+.3f}。")
    print(f"  走一步：展开是不压缩的 {milliseconds['展开'] / milliseconds['不压缩']:.1f} 倍时间，吸收是 {milliseconds['吸收'] / milliseconds['不压缩']:.2f} 倍。")

    print("\n这个数字对吗？")
    confirm(f"压到 d = {d} 个数，与原来的多头注意力损失相同（{squeezed[d]:.4f} 和 {base:.4f}）", abs(squeezed[d] - base) < 1e-3, "叠权重时键和值的次序反了，或漏乘了奇异值")
    confirm("实测的缓存与公式一个字节不差", exact, "存的是展开之后的键和值，那就一点没省")
    confirm("有缓存与没有缓存，logits 相同（最多差千分之一）", same, "位置没有接着数，或掩码没有右移")
    confirm("展开与吸收，logits 相同（最多差千分之一）", absorbed, "缩放用成了 √r，或 W_UK 拆头的次序不对")
    book = [f"{mha / 1e9:.2f}", f"{gqa / 1e9:.2f}", f"{mla / 1e9:.2f}", f"{mha / mla:.2f}", f"{1 - mla / mha:.2%}"]
    same_as_book = book == ["3.25", "0.81", "0.81", "4.03", "75.19%"]
    confirm("书中的配置：3.25、0.81、0.81 GB，4.03 倍，75.19%，与原书仓库相同", same_as_book, "k 没有向上取整，或 MLA 多乘了 2")


if __name__ == "__main__":
    main()
