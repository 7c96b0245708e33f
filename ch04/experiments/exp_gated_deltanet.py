"""第 4 章 · 实验　门控 DeltaNet：把整段话记进一块固定大小的黑板

问题：　不存每个词元的键和值，只留一块 k × k 的"黑板"S，边读边改写：一万个词元也只占这么多。它记得住多少对，改得动旧的吗？
先猜：　往 32 × 32 的黑板写 64 对随机的键值，"直接往上加"与"先擦掉旧的再写"（delta 规则），哪个认得出的多？同一个键改写 8 次呢？（先想 10 秒，再运行）
看点：　① 左上图：每个键只写一次，写得多了，直接加的反而认得出更多：擦的时候，碰到了别的键（写得少时一样多，读出的方向还是擦过的更准，
        看余弦）；② 右上图：先擦再写的偏向新的，最老的几乎认不出，直接加的一视同仁；
        ③ 左下图：同一个键一改再改，直接加的读到一团新旧的和；先擦再写的读到最新的，没改的键也还在；④ 右下图：门是整块地忘，
        直接加的靠它腾地方：新的清楚了，旧的没有了。
动手改：1. 把 recurrent_gated_delta_rule 里的 - memory 去掉（不擦旧的，直接写）：循环与分块不再相同，自查变成 ✗（①②③ 走的是分块，数字不变）。
        2. 把 K 从 32 改成 64：黑板大到四倍，写 64 对时，两种认得出的都多了。
        3. 把 main 里的 (False, 0.95) 改成 (False, 0.8)：改了许多遍的，读到最新的稍多，没改的一遍之后就几乎忘光：
           门擦不了单独一个键。

运行：
    python ch04/experiments/exp_gated_deltanet.py               # 图片写到 ch04/outputs/
    python ch04/experiments/exp_gated_deltanet.py --quick
    约 5 秒，0.5 GB（2 核 CPU，只用 1 核）；训练起来怎样，与注意力谁快，见 exp_linear_attention_recall.py

形状记号：b 批大小　t 序列长度　s 看得见几个（缓存里的加新来的）　c 一块里几个词元　d 嵌入维度　h 头数　k 每个头的维度　V 词表大小　n 写几对
"""

import argparse
import math
import statistics
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"

# 改这里
K = 32  # 黑板的边长：k × k 个数，写的是长 k 的键和值


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

    参数名与原书相同（只有归一化沿用本章的），少了 Qwen3-Next 里的卷积。一处不同：原书的 W_beta 给每个通道一个力度，这里与论文和
    Qwen3-Next 一样，每个头一个；每个通道各不相同时，一块里要解 k 个方程组，分块就不合算了。

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
        self.dt_bias = nn.Parameter(torch.ones(num_heads))  # 原书的初值：一开始每个词元忘掉 73%；从头训练时太大了，见 exp_linear_attention_recall.py
        self.A_log = nn.Parameter(torch.zeros(num_heads))
        self.norm = RMSNorm(self.head_dim)  # 每个头各自归一化
        self.out_proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)
        self.reset_cache()

    def reset_cache(self):
        """擦干净黑板，换一段话之前要调用。"""
        self.cache_state = None

    def update(self, *inputs):
        """改黑板、读黑板：来一个词元就循环，来一串就分块，结果相同。

        参数:
            *inputs (Tensor): 与 recurrent_gated_delta_rule 的参数相同

        返回:
            tuple[Tensor, Tensor]: 读出来的，新的黑板
        """
        return recurrent_gated_delta_rule(*inputs) if inputs[0].shape[2] == 1 else chunked_gated_delta_rule(*inputs, self.chunk_size)

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
        # 键归一成长度 1：这样"擦掉旧的"才正好擦干净，黑板也不会越写越大。查询除以 √k 是照原书；后面有 RMSNorm，几乎不影响结果。
        queries, keys = nn.functional.normalize(queries, dim=-1) / k**0.5, nn.functional.normalize(keys, dim=-1)
        beta = torch.sigmoid(self.W_beta(x)).transpose(1, 2)  # (b, h, t)
        alpha = (-self.A_log.exp() * nn.functional.softplus(self.W_alpha(x) + self.dt_bias)).transpose(1, 2)  # (b, h, t)　总是负数，所以只会忘
        state = self.cache_state if use_cache and self.cache_state is not None else x.new_zeros(b, h, k, k)
        context, state = self.update(queries, keys, values, alpha, beta, state)
        if use_cache:
            self.cache_state = state
        gate = nn.functional.silu(self.W_gate(x).view(b, t, h, k))  # (b, t, h, k)
        context = (self.norm(context.transpose(1, 2)) * gate).reshape(b, t, self.d_out)  # (b, t, d_out)
        return self.out_proj(self.dropout(context))


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
        stride = cfg["deltanet_stride"]  # 改：每 stride 层 DeltaNet 跟一层注意力；0 表示全是注意力，负数表示全是 DeltaNet
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


# region 沿用 ch04/experiments/exp_gqa.py: cache_error
def cache_error(model, ids):
    """缓存对不对：一个词元一个词元地带着缓存送进去，与一次送完相比，logits 最多差多少。（详解见 ch04/experiments/exp_gqa.py）"""
    model.eval()
    model.reset_kv_cache()
    with torch.no_grad():
        cached = torch.cat([model(token, use_cache=True) for token in ids.split(1, dim=1)], dim=1)  # (b, t, V)
        return (cached - model(ids)).abs().max().item()


# endregion


# region 沿用 ch04/experiments/exp_seed_noise.py: paired_interval, verdict
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


def blackboard(keys, values, erase, keep=1.0):
    """从空的黑板写起，一对一对地写完，返回黑板。

    参数:
        keys (Tensor): 键，长度为 1，(b, 1, n, k)
        values (Tensor): 值，(b, 1, n, k)
        erase (bool): True 是先擦再写（delta 规则，力度 1），False 是直接往上加
        keep (float): 门：每写一对之前，整块黑板留下几成

    返回:
        Tensor: 黑板，(b, 1, k, k)
    """
    b, h, n, k = keys.shape
    if erase:
        alpha = torch.full((b, h, n), math.log(keep))
        return chunked_gated_delta_rule(keys, keys, values, alpha, torch.ones(b, h, n), torch.zeros(b, h, k, k), 16)[1]
    faded = keep ** torch.arange(n - 1, -1, -1)[:, None]  # (n, 1)　第 i 对写下之后，又淡了 n - 1 - i 次
    return (faded * keys).transpose(2, 3) @ values  # (b, 1, k, k)


def read(keys, board, values):
    """用每个键去读，看读出来的与写过的哪个值方向最近。

    只看方向，不看长短：层里读出之后就是 RMSNorm，长短反正要丢掉。比"差多少"会冤枉直接加的：它读出来的偏长，方向却不差。

    参数:
        keys (Tensor): (b, 1, n, k)
        board (Tensor): 黑板，(b, 1, k, k)
        values (Tensor): 候选的值，(b, 1, m, k)；第 i 个键的值是第 i 个，多出来的是干扰

    返回:
        tuple[Tensor, Tensor]: 最近的是第几个，(b, n)；与自己那个值的余弦，(b, n)
    """
    cosines = nn.functional.normalize(keys @ board, dim=-1) @ nn.functional.normalize(values, dim=-1).transpose(2, 3)  # (b, 1, n, m)
    return cosines.argmax(dim=-1)[:, 0], cosines.diagonal(dim1=2, dim2=3)[:, 0]  # (b, n)，(b, n)


def random_pairs(n, k=K, repeats=160):
    """许多块黑板，各 n 对随机的键值。

    参数:
        n (int): 几对
        k (int): 黑板的边长
        repeats (int): 几块黑板，10 的倍数

    返回:
        tuple[Tensor, Tensor]: 键（长度为 1）和值，都是 (b, 1, n, k)
    """
    return nn.functional.normalize(torch.randn(repeats, 1, n, k), dim=-1), torch.randn(repeats, 1, n, k)


def recall(n, erase, keep=1.0, seed=123):
    """写 n 对随机的键值，认得出几成；按写下的先后分开。

    参数:
        n (int): 写几对
        erase (bool): 先擦再写，还是直接加
        keep (float): 门
        seed (int): 随机种子：种子相同，键和值就相同，两种写法才好配对相减

    返回:
        tuple[list[float], list[float], float]: 十组黑板各认错几成；第 i 个写下的认得出几成；余弦的平均
    """
    torch.manual_seed(seed)
    keys, values = random_pairs(n)
    nearest, cosine = read(keys, blackboard(keys, values, erase, keep), values)
    right = (nearest == torch.arange(n)).float()  # (b, n)
    return (1 - right.view(10, -1).mean(dim=1)).tolist(), right.mean(dim=0).tolist(), cosine.mean().item()


def overwriting(times, rule, seed, n=16):
    """写 n 个键，再把前一半的值改写几遍：改过的读到最新的吗？没改的还在吗？

    参数:
        times (int): 改写几遍，每遍都换新的值
        rule (tuple): erase 和 keep，与 blackboard 的相同
        seed (int): 随机的键值；同一个种子，几种写法写的是同样的东西
        n (int): 几个键

    返回:
        tuple[float, float]: 改过的，读到最新值的占几成；没改的，读对的占几成
    """
    torch.manual_seed(seed)
    keys, first = random_pairs(n)
    newer = [values[:, :, : n // 2] for _, values in (random_pairs(n) for _ in range(times))]
    written = torch.cat([first, *newer], dim=2)  # (b, 1, m, k)　候选里有所有写过的值，新的旧的都在
    board = blackboard(torch.cat([keys] + times * [keys[:, :, : n // 2]], dim=2), written, *rule)
    nearest, _ = read(keys, board, written)
    wanted = torch.arange(n)
    wanted[: n // 2] += written.shape[2] - n // 2  # 改过的，正确答案是最后一遍写的
    right = (nearest == wanted).float().mean(dim=0)  # (n,)
    return right[: n // 2].mean().item(), right[n // 2 :].mean().item()


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


def draw(counts, errors, ages, times, changed, keeps, gate, path):
    """四幅图：写几对认得出几成、新旧、改写、门。

    参数:
        counts (list[int]): 各写几对
        errors (dict): 名字 → 每个 n 的十组认错几成
        ages (dict): 名字 → 写 64 对时，第 i 个写下的认得出几成
        times (list[int]): 各改写几遍
        changed (dict): 名字 → 每个遍数的 overwriting 结果
        keeps (list[float]): 门的各种取值
        gate (dict): 名字 → 每个取值下认得出几成
        path (Path): 图片写到哪里
    """
    figure, axes = plt.subplots(2, 2, figsize=(10.4, 7.6), layout="constrained", sharey=True)
    colors = {"先擦再写": "tab:blue", "直接加": "tab:orange", "直接加，带门": "tab:green"}
    for name in errors:
        means = [100 - 100 * statistics.mean(groups) for groups in errors[name]]
        halves = [100 * paired_interval(groups)[1] for groups in errors[name]]
        axes[0, 0].errorbar(counts, means, halves, fmt="o-", capsize=2, color=colors[name], label=name)
        axes[0, 1].plot(range(len(ages[name]) - 1, -1, -1), [100 * each for each in ages[name]], color=colors[name], label=name)
    for name, pairs in changed.items():
        for which, style, title in [(0, "o-", "改过的，读到最新的"), (1, "s:", "没改的")]:
            axes[1, 0].plot(times, [100 * pair[which] for pair in pairs], style, color=colors[name], label=f"{name}：{title}")
    for (name, part), values in gate.items():
        axes[1, 1].plot(keeps, [100 * each for each in values], "o-" if part == "最新 16 个" else "s:", color=colors[name], label=f"{name}：{part}")
    axes[0, 0].axvline(K, color="gray", linestyle=":")
    axes[1, 1].invert_xaxis()
    labels = [f"写了几对（竖线：黑板的边长 {K}）", "写下之后，又写了几对（共 64 对）", "前 8 个键改写几遍（共 16 个键）", "门：每次留下几成（往右忘得快，共 64 对）"]
    for axis, label in zip(axes.flat, labels):
        axis.set_xlabel(label)
        axis.set_ylabel("认得出几成（%）")
        axis.legend(fontsize=7, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))  # 放在框外，不盖住线
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def main():
    """黑板记得住几对、偏向新的还是旧的、改不改得动、门忘掉什么；再看换掉注意力，缓存怎样变。"""
    parser = argparse.ArgumentParser(description="实验　门控 DeltaNet：一块固定大小的黑板")
    parser.add_argument("--chunk", type=int, default=16, help="分块的写法里，一块几个词元（默认：16）")
    parser.add_argument("--stride", type=int, default=3, help="混合模型里，每几层 DeltaNet 跟一层注意力（默认：3，与 Qwen3-Next 相同）")
    parser.add_argument("--seed", type=int, default=123, help="随机种子（默认：123）")
    parser.add_argument("--quick", action="store_true", help="少写几种，几秒钟走完全程")
    args = parser.parse_args()
    for name, low, high in [("chunk", 1, 1024), ("stride", 1, 3), ("seed", 0, 2**62)]:
        if not low <= getattr(args, name) <= high:
            parser.error(f"--{name} 应在 {low} 到 {high} 之间，不能是 {getattr(args, name)}")
    torch.set_num_threads(1)  # 矩阵都很小，别的程序占着核时，线程互相等，反而慢好几倍
    torch.manual_seed(args.seed)

    counts, times, keeps = ([8, 64], [1, 8], [1.0, 0.9]) if args.quick else ([4, 8, 16, 24, 32, 48, 64], [1, 2, 4, 8, 16], [1.0, 0.99, 0.97, 0.95, 0.9])
    rules = {"先擦再写": True, "直接加": False}
    results = {name: [recall(n, erase, 1.0, args.seed) for n in counts] for name, erase in rules.items()}
    errors = {name: [groups for groups, _, _ in each] for name, each in results.items()}
    print(f"① {K} × {K} 的黑板，160 块，每块写 n 对随机的键值，每个键一次；用键读，看与哪个写过的值方向最近")
    print("写几对　　　　　　　　　　" + "　".join(f"{n:5}" for n in counts))
    for name, each in results.items():
        print(f"{name.ljust(4, '　')}认得出　　　　　　" + "　".join(f"{1 - statistics.mean(groups):5.0%}" for groups, _, _ in each))
        print("　　　　与写下的值的余弦　" + "　".join(f"{cosine:5.2f}" for *_, cosine in each))
    for i, n in enumerate(counts):
        gaps = [b - a for a, b in zip(errors["先擦再写"][i], errors["直接加"][i])]
        mean, half = paired_interval(gaps)
        if n in (8, 32, 64) and not args.quick:
            print(f"  写 {n} 对：直接加的认错率，比先擦再写的{verdict(gaps)}（{100 * mean:+.1f} ± {100 * half:.1f} 个百分点，十组黑板，99% 区间）")
    if args.quick:
        print("  （--quick：看流程，不下结论）")
    ages = {name: each[-1][1] for name, each in results.items()}
    print(f"写 {counts[-1]} 对，最后 8 对认得出的：" + "，".join(f"{name} {statistics.mean(age[-8:]):.0%}" for name, age in ages.items()), end="")
    print("；最早 8 对：" + "，".join(f"{name} {statistics.mean(age[:8]):.0%}" for name, age in ages.items()))

    gated = {"先擦再写": (True, 1.0), "直接加": (False, 1.0), "直接加，带门": (False, 0.95)}
    changed = {name: [overwriting(count, rule, args.seed) for count in times] for name, rule in gated.items()}
    print(f"\n② 16 个键，前 8 个改写几遍；带门的每写一次，整块留 {gated['直接加，带门'][1]}")
    print("改写几遍　　　　　　　　　　　 " + "　　".join(f"{count:11}" for count in times))
    for name, pairs in changed.items():
        print(f"{name.ljust(7, '　')}改过的 / 没改的　" + "　　".join(f"{new:5.0%} /{kept:4.0%}" for new, kept in pairs))
    gate = {}
    for name, erase in rules.items():
        each = [recall(64, erase, keep, args.seed)[1] for keep in keeps]
        gate[name, "最新 16 个"] = [statistics.mean(age[-16:]) for age in each]
        gate[name, "最老 16 个"] = [statistics.mean(age[:16]) for age in each]
    print("\n③ 写 64 对，门每次留下几成　　　" + "　".join(f"{keep:5}" for keep in keeps))
    for (name, part), values in gate.items():
        print(f"{name.ljust(4, '　')}　{part}认得出　　　" + "　".join(f"{each:5.0%}" for each in values))

    cfg = {"vocab_size": 60, "context_length": 64, "emb_dim": 64, "n_heads": 4, "n_layers": 4, "drop_rate": 0.0, "qkv_bias": False, "chunk_size": args.chunk}
    linear = "全是 DeltaNet"
    sizes, same, formulas = {}, True, {}
    ids = torch.randint(60, (1, 64))  # (1, 64)
    print("\n④ 4 层的小模型，d = 64，4 个头（k = 16），一个一个地送进 64 个词元：第 1、8、64 个之后，缓存各多少字节")
    for name, stride in [("全是注意力", 0), (f"{args.stride} 层 DeltaNet，1 层注意力", args.stride), (linear, -1)]:
        model = GPTModel(cfg | {"deltanet_stride": stride})
        sizes[name] = cache_sizes(model, ids)
        boards = sum(isinstance(block.att, GatedDeltaNet) for block in model.trf_blocks)
        formulas[name] = kv_bytes_total_mha(1, 64, 64, 4 - boards, 4, 4) + kv_bytes_total_deltanet_no_conv(1, 64, boards, 4, 4)
        same &= cache_error(model, ids) < 1e-3
        print(name + " " * (28 - len(name.encode("gbk"))) + "　".join(f"{sizes[name][i]:8,}" for i in (0, 7, 63)))  # GBK 里汉字正好占两个字节，与终端里的宽度一样
    mha, board = kv_bytes_total_mha(1, 131072, 2048, 48, 2, 16), kv_bytes_total_deltanet_no_conv(1, 2048, 48, 2, 16)
    print("放大到书中的配置（48 层，d = 2048，16 个头，131072 个词元，bfloat16）：", end="")
    print(f"注意力 {mha / 1e9:.2f} GB，全是 DeltaNet {board / 1e9:.3f} GB，{args.stride} : 1 是 {(mha + args.stride * board) / (args.stride + 1) / 1e9:.2f} GB")
    draw(counts, errors, ages, times, changed, keeps, gate, OUTPUTS / "gated_deltanet.png")
    print(f"图片已写到 {OUTPUTS / 'gated_deltanet.png'}")

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
