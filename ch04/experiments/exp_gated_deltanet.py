"""第 4 章 · 实验　门控 DeltaNet：把整段话记进一块固定大小的黑板

问题：　不存每个词元的键和值，只留一块 k × k 的"黑板"S，边读边改写：一万个词元也只占这么多。它记得住多少对东西？
先猜：　k = 32 的黑板，记 8 对键值、32 对、64 对，各能记准几成？把循环改成分块算，结果会不会变？（先想 10 秒，再运行）
看点：　① 逐个词元的循环与分块的矩阵乘法，输出相同：前者好懂、适合生成，后者适合训练；
        ② 右上图：句子长一倍，注意力的分数表大到四倍，分块的活只多一倍，两条线早晚要交叉；
        ③ 左下图：写之前先"擦掉旧的"（delta），读回来的误差比直接往上加小；写得越多越糊。
动手改：1. --chunk 1：分块的退化成循环，右上图两条线靠拢；--chunk 64：看是不是块越大越快。
        2. 把 recurrent_gated_delta_rule 里的 - memory 去掉（不擦旧的，直接写）：循环与分块不再相同，自查变成 ✗。
        3. --stride 1：一层 DeltaNet 配一层注意力，看缓存和损失。

运行：
    python ch04/experiments/exp_gated_deltanet.py               # 图片写到 ch04/outputs/
    python ch04/experiments/exp_gated_deltanet.py --quick
    约 90 秒，0.5 GB（2 核 CPU，只用 1 核）

形状记号：b 批大小　t 序列长度　s 看得见几个（缓存里的加新来的）　c 一块里几个词元　d 嵌入维度　h 头数　k 每个头的维度　V 词表大小
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


def kv_bytes_total_mha(batch, context_length, emb_dim, n_layers, bytes_per_elem, n_heads):
    """多头注意力的 KV 缓存占多少字节：随词元数变大。

    参数:
        batch (int): 批大小
        context_length (int): 已经有几个词元
        emb_dim (int): 嵌入维度 d
        n_layers (int): 层数
        bytes_per_elem (int): 每个数几个字节
        n_heads (int): 头数 h

    返回:
        int: 字节数
    """
    return batch * context_length * n_heads * (emb_dim // n_heads) * 2 * bytes_per_elem * n_layers


def kv_bytes_total_deltanet_no_conv(batch, emb_dim, n_layers, bytes_per_elem, n_heads):
    """门控 DeltaNet 的状态占多少字节：每个头一块 k × k 的黑板，与词元数无关。

    与 KV 缓存的 2·t·k 相比，t = k / 2 个词元时两者一样大：短句子，它反而更占地方。

    参数:
        batch (int): 批大小
        emb_dim (int): 嵌入维度 d
        n_layers (int): 层数
        bytes_per_elem (int): 每个数几个字节
        n_heads (int): 头数 h

    返回:
        int: 字节数
    """
    return batch * n_heads * (emb_dim // n_heads) ** 2 * bytes_per_elem * n_layers


def recurrent_gated_delta_rule(queries, keys, values, alpha, beta, state):
    """门控 delta 规则，循环的写法：一个词元一个词元地改黑板、读黑板。

    参数:
        queries (Tensor): 查询，(b, h, t, k)
        keys (Tensor): 键，长度为 1，(b, h, t, k)
        values (Tensor): 值，(b, h, t, k)
        alpha (Tensor): 衰减的对数，不大于 0：0 表示一点不忘，(b, h, t)
        beta (Tensor): 改写的力度，0 到 1，(b, h, t)
        state (Tensor): 开始时的黑板 S，(b, h, k, k)；行是键的方向，列是值的方向

    返回:
        tuple[Tensor, Tensor]: 读出来的，(b, h, t, k)；结束时的黑板，(b, h, k, k)
    """
    outputs = []
    for i in range(queries.shape[2]):
        key = keys[:, :, i, None]  # (b, h, 1, k)
        state = state * alpha[:, :, i, None, None].exp()  # ① 忘：整块黑板淡一点
        memory = key @ state  # (b, h, 1, k)　② 读：这个键现在记着什么
        delta = beta[:, :, i, None, None] * (values[:, :, i, None] - memory)  # (b, h, 1, k)　③ 差：该记的减去已记的
        state = state + key.transpose(2, 3) @ delta  # (b, h, k, k)　④ 写：只补这个差
        outputs.append(queries[:, :, i, None] @ state)  # ⑤ 用查询读
    return torch.cat(outputs, dim=2), state  # (b, h, t, k)，(b, h, k, k)


def chunked_gated_delta_rule(queries, keys, values, alpha, beta, state, chunk_size):
    """门控 delta 规则，分块的写法：一块里的 c 个词元用矩阵乘法一次算完，块与块之间才接力。

    麻烦在于第 j 个词元要写的差 u_j，取决于同一块里前面写过的 u：u_j = β_j (v_j − 块前的黑板读出的 − Σ 前面各 u_l 的贡献)。
    这是一个下三角方程组 (I + A) U = β (V − …)，解它就同时得到整块的 U，不必循环。

    参数:
        queries (Tensor): 查询，(b, h, t, k)
        keys (Tensor): 键，长度为 1，(b, h, t, k)
        values (Tensor): 值，(b, h, t, k)
        alpha (Tensor): 衰减的对数，(b, h, t)
        beta (Tensor): 改写的力度，(b, h, t)
        state (Tensor): 开始时的黑板 S，(b, h, k, k)
        chunk_size (int): 一块里几个词元 c

    返回:
        tuple[Tensor, Tensor]: 读出来的，(b, h, t, k)；结束时的黑板，(b, h, k, k)

    出处: Yang 等，Gated Delta Networks，2024
    """
    outputs = []
    for q, key, v, a, write in zip(*(each.split(chunk_size, dim=2) for each in (queries, keys, values, alpha, beta))):
        write = write[..., None]  # (b, h, c, 1)
        total = a.cumsum(dim=2)[..., None]  # (b, h, c, 1)　从块的开头到第 i 个，一共衰减了多少（对数）
        # decay[i, j]：第 j 个写下的，到第 i 个还剩几成。先遮掉 j > i 再取指数，否则那里是正数，会溢出，梯度变成 nan。
        future = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).triu(1)  # (c, c)
        decay = (total - total.transpose(2, 3)).masked_fill(future, -torch.inf).exp()  # (b, h, c, c)
        faded = total.exp()  # (b, h, c, 1)　块前的黑板，到第 i 个还剩几成
        system = write * decay * (key @ key.transpose(2, 3))  # (b, h, c, c)
        wanted = write * (v - faded * (key @ state))  # (b, h, c, k)
        # unitriangular：对角线当作 1，也就是 I + A；对角线上原来的数不会被读。
        u = torch.linalg.solve_triangular(system, wanted, upper=False, unitriangular=True)  # (b, h, c, k)
        outputs.append(faded * (q @ state) + (decay * (q @ key.transpose(2, 3))) @ u)
        left = (total[:, :, -1:] - total).exp()  # (b, h, c, 1)　第 j 个写下的，到块的末尾还剩几成
        state = faded[:, :, -1:] * state + (left * key).transpose(2, 3) @ u  # (b, h, k, k)
    return torch.cat(outputs, dim=2), state  # (b, h, t, k)，(b, h, k, k)


class GatedDeltaNet(nn.Module):
    """门控 DeltaNet：不存键和值，只留一块固定大小的黑板，用门控制忘多少、写多少、读出多少。

    参数名与原书相同，少了 Qwen3-Next 里的卷积。一处不同：原书的 W_beta 给每个通道一个力度，这里与论文和 Qwen3-Next 一样，
    每个头一个；每个通道各不相同时，一块里要解 k 个方程组，分块就不合算了。

    参数:
        d_in (int): 输入维度
        d_out (int): 输出维度，必须能被 num_heads 整除
        dropout (float): 丢弃率
        num_heads (int): 头数 h
        qkv_bias (bool): Q、K、V 的投影带不带偏置
        chunk_size (int): 一块里几个词元；只影响快慢，不影响结果

    异常:
        ValueError: d_out 不能被 num_heads 整除，或 chunk_size 小于 1

    出处: 原书仓库 ch04/08_deltanet；Yang 等，Gated Delta Networks，2024
    """

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
        self.W_gate = nn.Linear(d_in, d_out, bias=False)  # 读出多少
        self.W_beta = nn.Linear(d_in, num_heads, bias=False)  # 写多少
        self.W_alpha = nn.Linear(d_in, num_heads, bias=False)  # 忘多少，与下面两个参数合起来用
        self.dt_bias = nn.Parameter(torch.ones(num_heads))
        self.A_log = nn.Parameter(torch.zeros(num_heads))
        self.norm = RMSNorm(self.head_dim)  # 每个头各自归一化
        self.out_proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)
        self.reset_cache()

    def reset_cache(self):
        """擦干净黑板，换一段话之前要调用。"""
        self.cache_state = None

    def forward(self, x, use_cache=False):
        """前向传播。

        参数:
            x (Tensor): (b, t, d)
            use_cache (bool): 接着上次的黑板往下写

        返回:
            Tensor: (b, t, d_out)
        """
        b, t, _ = x.shape
        h, k = self.num_heads, self.head_dim
        queries = self.W_query(x).view(b, t, h, k).transpose(1, 2)  # (b, h, t, k)
        keys = self.W_key(x).view(b, t, h, k).transpose(1, 2)  # (b, h, t, k)
        values = self.W_value(x).view(b, t, h, k).transpose(1, 2)  # (b, h, t, k)
        # 键归一成长度 1：这样"擦掉旧的"才正好擦干净，黑板也不会越写越大。
        queries, keys = nn.functional.normalize(queries, dim=-1) / k**0.5, nn.functional.normalize(keys, dim=-1)
        beta = torch.sigmoid(self.W_beta(x)).transpose(1, 2)  # (b, h, t)
        alpha = (-self.A_log.exp() * nn.functional.softplus(self.W_alpha(x) + self.dt_bias)).transpose(1, 2)  # (b, h, t)　总是负数，所以只会忘
        state = self.cache_state if use_cache and self.cache_state is not None else x.new_zeros(b, h, k, k)
        if t == 1:
            context, state = recurrent_gated_delta_rule(queries, keys, values, alpha, beta, state)
        else:
            context, state = chunked_gated_delta_rule(queries, keys, values, alpha, beta, state, self.chunk_size)
        if use_cache:
            self.cache_state = state
        gate = nn.functional.silu(self.W_gate(x).view(b, t, h, k))  # (b, t, h, k)
        context = (self.norm(context.transpose(1, 2)) * gate).reshape(b, t, self.d_out)  # (b, t, d_out)
        return self.out_proj(self.dropout(context))


# region 改写 ch04/experiments/exp_norms_and_activations.py: RMSNorm
class RMSNorm(nn.Module):
    """均方根归一化：x ÷ √mean(x²) × weight，不减均值，也没有平移。（原版详解见 ch04/experiments/exp_norms_and_activations.py）"""

    def __init__(self, emb_dim):
        super().__init__()
        self.eps = 1e-6  # 改：与 Qwen3-Next 相同
        self.weight = nn.Parameter(torch.ones(emb_dim))  # 改：参数名与原书相同

    def forward(self, x):
        return self.weight * x / torch.sqrt(x.pow(2).mean(dim=-1, keepdim=True) + self.eps)  # 改：weight 就是原来的 scale


# endregion


# region 改写 ch03/main: MultiHeadAttention
class MultiHeadAttention(nn.Module):
    """多头注意力，可以带缓存。（原版详解见 ch03/main/example_05_multihead_attention.py）"""

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
        self.reset_cache()  # 改：建好时缓存是空的

    # 改：忘掉缓存，换一段话之前要调用
    def reset_cache(self):
        self.cache_k = self.cache_v = None

    def forward(self, x, use_cache=False):  # 改：要不要用缓存
        b, t, _ = x.shape
        queries = self.W_query(x)  # (b, t, d_out)
        keys = self.W_key(x)  # (b, t, d_out)
        values = self.W_value(x)  # (b, t, d_out)
        queries = queries.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        keys = keys.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        values = values.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        if use_cache:  # 改：查询只要新词元的，键和值连同以前的
            if self.cache_k is not None:
                keys = torch.cat([self.cache_k, keys], dim=2)  # (b, h, s, k)
                values = torch.cat([self.cache_v, values], dim=2)  # (b, h, s, k)
            self.cache_k, self.cache_v = keys, values
        scores = queries @ keys.transpose(2, 3)  # (b, h, t, s)
        scores.masked_fill_(self.mask[keys.shape[2] - t : keys.shape[2], : keys.shape[2]], -torch.inf)  # 改：掩码要最后 t 行，因为前面有旧的
        weights = torch.softmax(scores / self.head_dim**0.5, dim=-1)  # (b, h, t, s)
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
    """Transformer 块，注意力可以换成门控 DeltaNet。（原版详解见 ch04/main/example_05_transformer_block.py）"""

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

    def forward(self, x, use_cache=False):  # 改：要不要用缓存，一路传下去
        shortcut = x
        x = self.norm1(x)
        x = self.att(x, use_cache)  # (b, t, d)　改：只有注意力有缓存
        x = self.drop_shortcut(x)
        x = x + shortcut
        shortcut = x
        x = self.norm2(x)
        x = self.ff(x)  # (b, t, d)
        x = self.drop_shortcut(x)
        return x + shortcut


class GPTModel(nn.Module):
    """GPT，几层门控 DeltaNet 配一层注意力，可以带缓存。（原版详解见 ch04/main/example_06_gpt_model.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.Sequential(*[TransformerBlock(cfg) for _ in range(cfg["n_layers"])])
        stride = cfg["deltanet_stride"]  # 改：K 层 DeltaNet 跟一层注意力；0 表示全是注意力，负数表示全是 DeltaNet
        for layer, block in enumerate(self.trf_blocks):  # 改：同上
            if stride < 0 or stride > 0 and layer % (stride + 1) < stride:  # 改：同上
                block.att = GatedDeltaNet(cfg["emb_dim"], cfg["emb_dim"], cfg["drop_rate"], cfg["n_heads"], chunk_size=cfg["chunk_size"])  # 改：同上
        self.final_norm = LayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)
        self.current_pos = 0  # 改：见过几个词元，新词元的位置从它数起

    # 改：换一段话之前，每层的缓存和位置一起清零
    def reset_kv_cache(self):
        for block in self.trf_blocks:
            block.att.reset_cache()
        self.current_pos = 0

    def forward(self, in_idx, use_cache=False):  # 改：要不要用缓存
        t = in_idx.shape[1]
        start = self.current_pos if use_cache else 0  # 改：有缓存时，位置接着数
        if start + t > self.pos_emb.num_embeddings:  # 改：连见过的一起数
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


def random_inputs(b, h, t, k):
    """随机造一组门控 delta 规则的输入，键已归一。

    参数:
        b (int): 批大小
        h (int): 头数
        t (int): 序列长度
        k (int): 每个头的维度

    返回:
        list[Tensor]: queries、keys、values、alpha、beta、state，次序与两个函数的参数相同
    """
    queries, keys, values = torch.randn(3, b, h, t, k)
    gates = torch.rand(2, b, h, t)
    return [queries, nn.functional.normalize(keys, dim=-1), values, -gates[0], gates[1], torch.randn(b, h, k, k)]


def recall_errors(counts, k=32):
    """往一块 k × k 的黑板上写 n 对随机的键和值，再用每个键去读，看读错多少。

    参数:
        counts (list[int]): 各写几对
        k (int): 黑板的边长

    返回:
        dict[str, list[float]]: "先擦再写"与"直接加"的相对误差，各与 counts 一一对应；1 表示读出来的与没记差不多
    """
    result = {"先擦再写": [], "直接加": []}
    for n in counts:
        keys, values = nn.functional.normalize(torch.randn(16, 1, n, k), dim=-1), torch.randn(16, 1, n, k)  # (b, 1, n, k)
        never, always = torch.zeros(16, 1, n), torch.ones(16, 1, n)  # 一点不忘，全力改写
        _, state = recurrent_gated_delta_rule(keys, keys, values, never, always, torch.zeros(16, 1, k, k))
        for name, board in [("先擦再写", state), ("直接加", keys.transpose(2, 3) @ values)]:
            result[name].append(((keys @ board - values).square().sum() / values.square().sum()).item())
    return result


def seconds_by_length(lengths, chunk_size, h=4, k=32):
    """循环、分块、注意力三种算法，各种长度用多少秒。

    参数:
        lengths (list[int]): 序列长度
        chunk_size (int): 一块里几个词元
        h (int): 头数
        k (int): 每个头的维度

    返回:
        dict[str, list[float]]: 名字 → 秒数，各与 lengths 一一对应，取三次里最快的
    """
    result = {"循环": [], "分块": [], "注意力": []}
    for t in lengths:
        inputs, future = random_inputs(1, h, t, k), torch.ones(t, t, dtype=torch.bool).triu(1)

        def attention(queries, keys, values, *_, future=future):
            return torch.softmax((queries @ keys.transpose(2, 3)).masked_fill(future, -torch.inf), dim=-1) @ values  # (b, h, t, k)

        for name, step in [("循环", recurrent_gated_delta_rule), ("分块", lambda *each: chunked_gated_delta_rule(*each, chunk_size)), ("注意力", attention)]:
            best = float("inf")
            for _ in range(3):
                start = time.perf_counter()
                step(*inputs)
                best = min(best, time.perf_counter() - start)
            result[name].append(best)
    return result


def cache_sizes(model, ids):
    """一个词元一个词元地送进去，每送一个，量一次各层的缓存（键、值、黑板）合计几个字节。

    参数:
        model (nn.Module): 带缓存的 GPT
        ids (Tensor): 词元编号，(1, t)

    返回:
        list[int]: 每一步之后的字节数
    """
    model.eval()
    model.reset_kv_cache()
    sizes = []
    for token in ids.split(1, dim=1):
        with torch.no_grad():
            model(token, use_cache=True)
        kept = [getattr(block.att, name, None) for block in model.trf_blocks for name in ("cache_k", "cache_v", "cache_state")]
        sizes.append(sum(each.nbytes for each in kept if each is not None))
    return sizes


def draw(sizes, lengths, seconds, counts, errors, curves, noise, path):
    """四幅图：缓存的增长、用时随长度、记得准不准、训练曲线。

    参数:
        sizes (dict): 名字 → cache_sizes 的结果
        lengths (list[int]): seconds 的各个长度
        seconds (dict): seconds_by_length 的结果
        counts (list[int]): errors 的各个对数
        errors (dict): recall_errors 的结果
        curves (dict): 名字 → train 的结果，第一条是参照
        noise (float): seed_noise 的结果，画成灰带
        path (Path): 图片写到哪里
    """
    figure, axes = plt.subplots(2, 2, figsize=(10.4, 8), layout="constrained")
    for name in curves:
        axes[0, 0].plot(range(1, len(sizes[name]) + 1), [size / 1024 for size in sizes[name]], label=name)
        axes[1, 1].plot(*zip(*curves[name]), label=name)
    for name, values in seconds.items():
        axes[0, 1].plot(lengths, [1000 * each for each in values], "o-", label=name)
    for name, values in errors.items():
        axes[1, 0].plot(counts, values, "o-", label=name)
    last = next(iter(curves.values()))[-1][1]
    axes[1, 1].axhspan(last - noise, last + noise, color="0.85", label="换个种子的差别")
    axes[0, 1].set_xscale("log", base=2)
    axes[0, 1].set_yscale("log")
    axes[0, 1].set_xticks(lengths, [str(each) for each in lengths])
    axes[1, 0].axvline(32, color="gray", linestyle=":")
    axes[1, 0].set_ylim(bottom=0)
    labels = [("已经有几个词元", "实测的缓存（KB）"), ("序列长度", "用时（毫秒，对数刻度）"), ("写了几对键值（虚线：黑板的边长 32）", "读错多少（1：与没记差不多）"), ("训练步数", "验证损失")]
    for axis, (x, y) in zip(axes.flat, labels):
        axis.set_xlabel(x)
        axis.set_ylabel(y)
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
    """循环与分块相同吗、快多少；黑板记得住几对；换掉注意力，缓存和损失怎样变。"""
    parser = argparse.ArgumentParser(description="实验　门控 DeltaNet：一块固定大小的黑板")
    parser.add_argument("--chunk", type=int, default=16, help="一块里几个词元（默认：16）")
    parser.add_argument("--stride", type=int, default=3, help="混合模型里，每几层 DeltaNet 跟一层注意力（默认：3，与 Qwen3-Next 相同）")
    parser.add_argument("--steps", type=int, default=300, help="每个模型训练几步（默认：300）")
    parser.add_argument("--seed", type=int, default=123, help="初始权重的随机种子（默认：123）")
    parser.add_argument("--quick", action="store_true", help="只训练 10 步，序列短一些，几秒钟走完全程")
    args = parser.parse_args()
    for name, low, high in [("chunk", 1, 1024), ("stride", 1, 100), ("steps", 1, 100000), ("seed", 0, 2**62)]:
        if not low <= getattr(args, name) <= high:
            parser.error(f"--{name} 应在 {low} 到 {high} 之间，不能是 {getattr(args, name)}")
    context, layers, steps = 64, 4, min(args.steps, 10) if args.quick else args.steps
    path = find_data("the-verdict.txt", "story-en.txt")
    train_ids, val_ids, chars = encode_characters(path.read_text(encoding="utf-8"))
    torch.set_num_threads(1)  # 矩阵都很小，两个线程也只快三成；别的程序占着核时，线程互相等，反而慢好几倍
    print(f"数据　{path}　{len(train_ids) + len(val_ids):,} 个字符，{len(chars)} 种")
    torch.manual_seed(args.seed)

    lengths = [128, 256, 512] if args.quick else [128, 256, 512, 1024, 2048]
    seconds = seconds_by_length(lengths, args.chunk)
    print(f"\n长度（4 个头，k = 32，一块 {args.chunk} 个）　" + "　".join(f"{t:8}" for t in lengths))
    for name, values in seconds.items():
        print(f"{name.ljust(4, '　')}（毫秒）　　　　　　　　　　" + "　".join(f"{1000 * each:8.2f}" for each in values))
    counts = [1, 4, 8, 16, 24, 32, 48, 64]
    errors = recall_errors(counts)
    print("\n黑板 32 × 32，写几对　　" + "　".join(f"{n:5}" for n in counts))
    for name, values in errors.items():
        print(f"{name.ljust(4, '　')}读错多少　　　　" + "　".join(f"{each:5.0%}" for each in values))

    cfg = {"vocab_size": len(chars), "context_length": context, "emb_dim": 64, "n_heads": 4, "n_layers": layers, "drop_rate": 0.0, "qkv_bias": False}
    cfg["chunk_size"] = args.chunk
    full, mixed, linear = "全是注意力", f"{args.stride} 层 DeltaNet，1 层注意力", "全是 DeltaNet"
    curves, sizes, same, formulas, params = {}, {}, True, {}, {}
    for name, stride in [(full, 0), (mixed, args.stride), (linear, -1)]:
        torch.manual_seed(args.seed)
        model = GPTModel(cfg | {"deltanet_stride": stride})
        params[name] = sum(p.numel() for p in model.trf_blocks[0].att.parameters())  # 第一层：混合的也是 DeltaNet
        curves[name] = train(model, train_ids, val_ids, context, steps, name)
        sizes[name] = cache_sizes(model, val_ids[None, :context])
        boards = sum(isinstance(block.att, GatedDeltaNet) for block in model.trf_blocks)
        formulas[name] = kv_bytes_total_mha(1, context, 64, layers - boards, 4, 4) + kv_bytes_total_deltanet_no_conv(1, 64, boards, 4, 4)
        same &= cache_error(model, val_ids[None, :context]) < 1e-3
    torch.manual_seed(args.seed + 1)
    other = train(GPTModel(cfg | {"deltanet_stride": 0}), train_ids, val_ids, context, steps, "换个种子")
    noise = seed_noise(curves[full], other)
    print(f"\n小模型　{layers} 层，d = 64，4 个头，上下文 {context}，训练 {steps} 步\n结构　　　　　　　　　　　　写满的缓存　公式算的　验证损失　比全是注意力")
    for name in curves:
        print(f"{name.ljust(14, '　')}{sizes[name][-1]:9,} B{formulas[name]:9,} B{curves[name][-1][1]:10.3f}{curves[name][-1][1] - curves[full][-1][1]:+11.3f}")
    print(f"{'全是注意力，换个种子'.ljust(14, '　')}{other[-1][1]:32.3f}{other[-1][1] - curves[full][-1][1]:+11.3f}")

    mha, board = kv_bytes_total_mha(1, 131072, 2048, 48, 2, 16), kv_bytes_total_deltanet_no_conv(1, 2048, 48, 2, 16)
    print("\n放大到书中的配置（48 层，d = 2048，16 个头，131072 个词元，bfloat16）：", end="")
    print(f"注意力 {mha / 1e9:.2f} GB，全是 DeltaNet {board / 1e9:.3f} GB，3 : 1 是 {(mha + 3 * board) / 4e9:.2f} GB")
    draw(sizes, lengths, seconds, counts, errors, curves, noise, OUTPUTS / "gated_deltanet.png")
    print(f"图片已写到 {OUTPUTS / 'gated_deltanet.png'}")

    print("\n所以（都是这一次量的）：")
    grown = {name: values[-1] / values[-2] for name, values in seconds.items()}
    print(f"  {lengths[-1]} 个词元：分块的用时是循环的 {seconds['分块'][-1] / seconds['循环'][-1]:.2f} 倍。", end="")
    print(f"从 {lengths[-2]} 到 {lengths[-1]}，注意力的时间变成 {grown['注意力']:.1f} 倍，分块变成 {grown['分块']:.1f} 倍。")
    print(f"  32 × 32 的黑板写 16 对：先擦再写读错 {errors['先擦再写'][3]:.0%}，直接加 {errors['直接加'][3]:.0%}；写 64 对：{errors['先擦再写'][-1]:.0%} 和 {errors['直接加'][-1]:.0%}。")
    for name in (mixed, linear):
        gap = curves[name][-1][1] - curves[full][-1][1]
        verdict = "没有超过" if abs(gap) <= noise else f"{'差' if gap > 0 else '好'}得超过了"
        print(f"  {name}：缓存是「{full}」的 {sizes[name][-1] / sizes[full][-1]:.2f} 倍，验证损失 {gap:+.3f}，{verdict}换个种子的差别（{noise:.3f}）。")

    print(f"  比损失时别忘了：DeltaNet 多几个门，一层的参数是注意力的 {params[linear] / params[full]:.2f} 倍；要记的东西一多会怎样，看上面「读错多少」的表。")

    print("\n这个数字对吗？")
    inputs = random_inputs(2, 3, 50, 16)
    one, two = recurrent_gated_delta_rule(*inputs), chunked_gated_delta_rule(*inputs, args.chunk)
    worst = max((first - second).abs().max().item() for first, second in zip(one, two))
    equal = all(torch.allclose(first, second, atol=1e-4) for first, second in zip(one, two))
    confirm(f"循环与分块，输出和黑板都相同（50 个词元，最多差 {worst:.0e}）", equal, "块内的衰减算错了一格，或方程组少了对角线上的 1")
    keys = torch.linalg.qr(torch.randn(2, 3, 16, 16))[0]  # (b, h, t, k)　16 个互相垂直的键：擦旧的时谁也碰不到谁
    queries, values = torch.randn(2, 2, 3, 16, 16)
    never, always, empty = torch.zeros(2, 3, 16), torch.ones(2, 3, 16), torch.zeros(2, 3, 16, 16)
    context_vectors = (queries @ keys.transpose(2, 3)).tril() @ values  # (b, h, t, k)　没有 softmax 的因果注意力
    read = recurrent_gated_delta_rule(queries, keys, values, never, always, empty)[0]  # (b, h, t, k)
    confirm("不忘、全力写、键互相垂直时，就是没有 softmax 的因果注意力", torch.allclose(read, context_vectors, atol=1e-4), "先读后写了：查询应当看得到自己写的")
    confirm("实测的缓存与公式一个字节不差", all(sizes[name][-1] == formulas[name] for name in sizes), "注意力的层数分错了")
    confirm("一个一个地送（循环）与一次送完（分块），整个模型的 logits 相同（最多差千分之一）", same, "黑板没有接着写，或位置没有接着数")
    flat = sizes[linear]
    confirm("全是 DeltaNet 时，缓存从第一个词元起就不再变大", flat[0] == flat[-1], "存了不该存的")


if __name__ == "__main__":
    main()
