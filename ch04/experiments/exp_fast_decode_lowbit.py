"""第 4 章 · 实验　把数变短：16 位、8 位、4 位，写一个词元各要多久？

问题：　写一个词元的时间几乎全花在读权重上（exp_fast_decode.py）。权重从 32 位变成 16、8、4 位，要读的少了几倍，就快几倍吗？
先猜：　int4 要读的是 fp32 的 1/6.4（每 32 个数还带一个步长、一个零点）。会快 6.4 倍吗？8 位和 4 位，各错多少？（先想 10 秒，再运行）
看点：　① 表里每一行都写明与谁只差一样；「要读的少几倍」和「快几倍」并排放着，差得远的，时间就不是花在读权重上；
        ② 图上，离红线（内存读取速度定下的上限）越远，越说明是算得慢，不是读得慢：没有专门指令的那种 16 位（fp16 或 bf16），读的少一半，却不见快；
        ③ logits 误差随位数变大。误差要不要紧，随机的权重说不出来：4 位伤到的是真的语言，要用真的模型量困惑度（--pretrained）。
动手改：1. 把 Int4Linear.group 从 32 改成 128：要读的更少，logits 误差更大。
        2. 把 row_steps 里的 / 127 改成 / 7，就只剩 15 个值，与 4 位差不多：误差比 int4 还大，「位数越少误差越大」变成 ✗；差在一整行共用一个步长。
        3. --threads 2：两个核，哪几行快了？快了的，本来是算得慢；没快的，本来就是读得慢。

运行：
    python ch04/experiments/exp_fast_decode_lowbit.py                   # 权重随机：快慢与数的内容无关
    python ch04/experiments/exp_fast_decode_lowbit.py --pretrained      # OpenAI 的权重，再量困惑度（先运行 ch05/main/gpt_download.py）
    python ch04/experiments/exp_fast_decode_lowbit.py --quick
    约 45 秒，4.7 GB（2 核 CPU）

形状记号：b 批大小　t 这一次送进来几个词元　s 连同缓存一共几个　d 嵌入维度　h 头数　k 每个头的维度　V 词表大小（在线性层里是输出维度）
"""

import argparse
import copy
import math
import os
import statistics
import sys
import time
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import tiktoken
import torch
import torch.nn as nn
import torch.nn.functional as F
import zhplot  # noqa: F401　导入它，图上就能写中文
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
GPT_CONFIG_124M = {"vocab_size": 50257, "context_length": 1024, "emb_dim": 768, "n_heads": 12, "n_layers": 12, "drop_rate": 0.0, "qkv_bias": True}
QUICK_CONFIG = GPT_CONFIG_124M | {"vocab_size": 4096, "emb_dim": 256, "n_heads": 4, "n_layers": 4, "context_length": 256}
PROMPT = 32  # 提示词几个词元


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


# region 沿用 ch04/experiments/exp_kv_cache.py: ConcatCache, PreallocatedCache, in_turn, compare, speeds
class ConcatCache:
    """一层的 KV 缓存，最直白的写法：每来一批新的键和值，就用 torch.cat 接在后面。（详解见 ch04/experiments/exp_kv_cache.py）"""

    def __init__(self):
        self.reset()

    def reset(self):
        self.keys = self.values = None
        self.length = 0

    def update(self, keys, values):
        self.length += keys.shape[2]
        if self.keys is not None:
            keys = torch.cat([self.keys, keys], dim=2)  # (b, h, s, k)
            values = torch.cat([self.values, values], dim=2)  # (b, h, s, k)
        self.keys, self.values = keys, values
        return keys, values


class PreallocatedCache:
    """一层的 KV 缓存，预分配：一次要够内存，新来的填进下一个空位，旧的一个也不动。（详解见 ch04/experiments/exp_kv_cache.py）"""

    def __init__(self, capacity):
        self.capacity, self.keys, self.values = capacity, None, None
        self.reset()

    def reset(self):
        self.length = 0

    def update(self, keys, values):
        b, h, t, k = keys.shape
        if self.keys is None:
            self.keys, self.values = keys.new_empty(b, h, self.capacity, k), values.new_empty(b, h, self.capacity, k)
        end = self.length + t
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


def in_turn(jobs, rounds, title="轮流量"):
    """几件事轮流做，每轮换一个先后：别的程序抢 CPU 时大家一起慢，相除就抵消了。（详解见 ch04/experiments/exp_kv_cache.py）"""
    names, seconds = list(jobs), {name: [] for name in jobs}
    for i in tqdm(range(rounds), desc=title, unit="轮", leave=False):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            jobs[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def compare(before, after):
    """后一个比前一个快几倍，看不看得清：同一轮的两次相除，一半的比值都在 1 的同一边，才算看得清。（详解见 ch04/experiments/exp_kv_cache.py）"""
    low, middle, high = statistics.quantiles([a / b for a, b in zip(before, after)], n=4)
    clear = not low <= 1 <= high and abs(middle - 1) > 0.03
    return middle, ("更快" if middle > 1 else "更慢") if clear else "分不出"


def speeds(seconds):
    """每秒几次，从慢到快三个数：四分之一、一半、四分之三的位置。（详解见 ch04/experiments/exp_kv_cache.py）"""
    return [1 / value for value in reversed(statistics.quantiles(seconds, n=4))]


# endregion


# region 沿用 ch04/experiments/exp_fast_decode.py: fuse_qkv, Decoder
def fuse_qkv(model):
    """每一层的 W_query、W_key、W_value 叠成一个大线性层：读的权重一样多，三次乘法变一次。（详解见 ch04/experiments/exp_fast_decode.py）"""
    fused = []
    for block in model.trf_blocks:
        three = block.att.W_query, block.att.W_key, block.att.W_value
        linear = nn.Linear(three[0].in_features, 3 * three[0].out_features)
        linear.load_state_dict({name: torch.cat([getattr(each, name) for each in three]) for name in ("weight", "bias")})
        fused.append(linear)
    return fused


class Decoder:
    """带缓存的生成。开关都不开时，算的就是 GPTModel.forward 那几步，用的也是它的那些层；每个开关换掉一样。（详解见 ch04/experiments/exp_fast_decode.py）"""

    def __init__(self, model, fused, switches, capacity):
        self.model, self.fused, self.switches = model, fused, switches
        self.caches = [PreallocatedCache(capacity) if "preallocated" in switches else ConcatCache() for _ in model.trf_blocks]

    def norm(self, layer, x):
        return F.layer_norm(x, x.shape[-1:], layer.scale, layer.shift, layer.eps) if "kernels" in self.switches else layer(x)

    def attend(self, queries, keys, values, cache):
        keys, values = cache.update(keys, values)  # (b, h, s, k)
        t, s = queries.shape[2], keys.shape[2]
        if "sdpa" in self.switches:
            return F.scaled_dot_product_attention(queries, keys, values, is_causal=t > 1)  # (b, h, t, k)
        scores = queries @ keys.transpose(2, 3) / queries.shape[3] ** 0.5  # (b, h, t, s)
        future = torch.ones(t, s, dtype=torch.bool).triu(s - t + 1)  # (t, s)
        return torch.softmax(scores.masked_fill(future, -torch.inf), dim=-1) @ values  # (b, h, t, k)

    @torch.inference_mode()
    def forward(self, ids):
        model, (b, t), offset = self.model, ids.shape, self.caches[0].length
        x = model.tok_emb(ids) + model.pos_emb(torch.arange(offset, offset + t))  # (b, t, d)
        for block, fused, cache in zip(model.trf_blocks, self.fused, self.caches):
            att, normed = block.att, self.norm(block.norm1, x)
            qkv = fused(normed).chunk(3, dim=-1) if "qkv" in self.switches else [linear(normed) for linear in (att.W_query, att.W_key, att.W_value)]
            heads = [each.view(b, t, att.num_heads, att.head_dim).transpose(1, 2) for each in qkv]
            context = self.attend(*heads, cache)  # (b, h, t, k)
            x = x + att.out_proj(context.transpose(1, 2).reshape(b, t, -1))  # (b, t, d)
            up, gelu, down = block.ff.layers
            hidden = up(self.norm(block.norm2, x))  # (b, t, 4d)
            x = x + down(F.gelu(hidden, approximate="tanh") if "kernels" in self.switches else gelu(hidden))
        return model.out_head(self.norm(model.final_norm, x[:, -1:] if "last" in self.switches else x))

    def start(self, ids):
        for cache in self.caches:
            cache.reset()
        self.next = self.forward(ids)[:, -1].argmax(dim=-1, keepdim=True)  # (b, 1)

    def step(self):
        self.next = self.forward(self.next)[:, -1].argmax(dim=-1, keepdim=True)  # (b, 1)


# endregion


class PlainLinear:
    """线性层，PyTorch 平常的写法：F.linear。

    参数:
        weight (Tensor): 权重，（输出，输入）
        bias (Tensor 或 None): 偏置
        dtype (torch.dtype): 用什么精度存、用什么精度算
    """

    def __init__(self, weight, bias, dtype):
        self.weight, self.bias = weight.detach().to(dtype), None if bias is None else bias.detach().to(dtype)
        self.nbytes = self.weight.nbytes  # 每个词元要从内存读多少字节；偏置小得可以忽略

    def __call__(self, x):
        """算 x 乘权重的转置，加偏置。"""
        return F.linear(x, self.weight, self.bias)


class PackedLinear(PlainLinear):
    """同样的数，先按 oneDNN 喜欢的次序重排一遍（prepack），以后每次直接用。

    参数:
        weight (Tensor): 权重，（输出，输入）
        bias (Tensor 或 None): 偏置
        dtype (torch.dtype): 精度
    """

    def __init__(self, weight, bias, dtype):
        super().__init__(weight, bias, dtype)
        # torch.compile 冻结权重时，换上的就是这两个函数。它们还不是公开的接口，新版本可能改名，所以外面有「跳过」。
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, 1)
        self.weight = None  # 原来那份不要了

    def __call__(self, x):
        """算 x 乘权重的转置，加偏置。"""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def row_steps(weight):
    """8 位整数的步长：每一行各用各的，一行里最大的数正好是 127 步。

    参数:
        weight (Tensor): 权重，（输出，输入）

    返回:
        Tensor: 每行一个步长，(V,)
    """
    return weight.abs().amax(dim=1).clamp(min=1e-8) / 127


class Int8Linear:
    """只有权重是 8 位整数：每一行除以自己的步长，四舍五入到 −127…127；激活值仍是 16 位，算的时候再乘回去。

    参数:
        weight (Tensor): 权重，（输出，输入）
        bias (Tensor 或 None): 偏置
        dtype (torch.dtype): 激活值的精度
    """

    def __init__(self, weight, bias, dtype):
        weight = weight.detach().float()
        scale = row_steps(weight)  # (V,)
        self.weight = (weight / scale[:, None]).round().to(torch.int8)  # (V, d)
        self.scale, self.bias = scale.to(dtype), None if bias is None else bias.detach().to(dtype)
        self.nbytes = self.weight.nbytes

    def __call__(self, x):
        """算 x 乘权重的转置，加偏置。

        参数:
            x (Tensor): (b, t, d)

        返回:
            Tensor: (b, t, V)
        """
        y = torch._weight_int8pack_mm(x.flatten(0, -2), self.weight, self.scale).unflatten(0, x.shape[:-1])  # (b, t, V)
        return y if self.bias is None else y + self.bias


class Int8DynamicLinear:
    """激活值也是 8 位整数：算的时候现量步长、现转，整数乘整数；CPU 有专门的指令（VNNI）。

    参数:
        weight (Tensor): 权重，（输出，输入）
        bias (Tensor 或 None): 偏置
        dtype (torch.dtype): 输入输出的精度，只能是 float32
    """

    def __init__(self, weight, bias, dtype):
        weight = weight.detach().float()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 这组接口将来要搬到 torchao，现在仍是 CPU 上最快的
            quantized = torch.quantize_per_channel(weight, row_steps(weight).double(), torch.zeros(len(weight), dtype=torch.int64), 0, torch.qint8)
            self.packed = torch.ops.quantized.linear_prepack(quantized, None if bias is None else bias.detach().float())
        self.nbytes = weight.numel()

    def __call__(self, x):
        """算 x 乘权重的转置，加偏置。"""
        return torch.ops.quantized.linear_dynamic(x, self.packed)


class Int4Linear:
    """只有权重是 4 位整数：每 32 个一组，各有自己的步长和零点，四舍五入到 0…15。

    参数:
        weight (Tensor): 权重，（输出，输入），输入维度要能被每组的大小整除
        bias (Tensor 或 None): 偏置
        dtype (torch.dtype): 激活值的精度
    """

    group = 32  # 每组几个：小，误差小，但步长和零点也要读；32 个一组，平均每个权重是 4 + 32/32 = 5 位

    def __init__(self, weight, bias, dtype):
        weight, self.rows = weight.detach().float(), len(weight)
        weight = F.pad(weight, (0, 0, 0, -self.rows % 64))  # 内核要求输出维度是 64 的倍数，补几行 0，算完再切掉
        groups = weight.view(len(weight), -1, self.group)  # (V, d / 32, 32)
        low, high = groups.amin(dim=-1), groups.amax(dim=-1)
        scale = (high - low).clamp(min=1e-6) / 15
        steps = ((groups - low[..., None]) / scale[..., None]).round().clamp(0, 15)
        self.packed = torch._convert_weight_to_int4pack_for_cpu(steps.to(torch.int32).view(weight.shape), 1)  # (V, d / 2)　两个 4 位挤一个字节
        # 内核算的是 (q − 8) · scale + zero，所以零点取中间那一步（第 8 步）的值。
        self.scales = torch.stack([scale, low + 8 * scale], dim=-1).transpose(0, 1).contiguous().to(dtype)  # (d / 32, V, 2)
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.nbytes = self.packed.nbytes + self.scales.nbytes

    def __call__(self, x):
        """算 x 乘权重的转置，加偏置。

        参数:
            x (Tensor): (b, t, d)

        返回:
            Tensor: (b, t, V)
        """
        y = torch._weight_int4pack_mm_for_cpu(x.flatten(0, -2), self.packed, self.group, self.scales)[:, : self.rows].unflatten(0, x.shape[:-1])  # (b, t, V)
        return y if self.bias is None else y + self.bias


def convert(module, linear, dtype):
    """照原样再搭一个模型：线性层都换成 linear，其余的参数换成 dtype，不占两份内存。

    参数:
        module (nn.Module): 原来的
        linear (type): 换成哪种线性层
        dtype (torch.dtype): 精度

    返回:
        nn.Module 或 linear: 换过的
    """
    if isinstance(module, nn.Linear):
        return linear(module.weight, module.bias, dtype)
    new = copy.copy(module)  # 浅拷贝：下面两个字典换成新的，原来的模型不动
    new._modules = {name: convert(child, linear, dtype) for name, child in module._modules.items()}
    new._parameters = {name: parameter.detach().to(dtype) for name, parameter in module._parameters.items()}
    return new


class LowBitDecoder(Decoder):
    """exp_fast_decode.py 的最后一级（开关全开，批大小 1），换着线性层和精度来跑。

    参数:
        model (GPTModel): 权重从这里来
        fused (list[nn.Linear]): fuse_qkv 的结果
        linear (type): 用哪种线性层
        dtype (torch.dtype): 激活值的精度
        attention (torch.dtype): 注意力和 KV 缓存的精度
        capacity (int): 缓存放得下几个词元
    """

    def __init__(self, model, fused, linear, dtype, attention, capacity):
        model, fused = convert(model, linear, dtype), [convert(each, linear, dtype) for each in fused]
        super().__init__(model, fused, {"last", "qkv", "sdpa", "kernels", "preallocated"}, capacity)
        self.dtype, self.attention = dtype, attention
        self.nbytes = sum(each.nbytes for each in fused) + model.out_head.nbytes
        self.nbytes += sum(each.nbytes for block in model.trf_blocks for each in (block.att.out_proj, block.ff.layers[0], block.ff.layers[2]))

    def attend(self, queries, keys, values, cache):
        """转成注意力的精度，算完再转回来。

        参数:
            queries, keys, values (Tensor): 新词元的，(b, h, t, k)
            cache (PreallocatedCache): 这一层的缓存

        返回:
            Tensor: (b, h, t, k)
        """
        return super().attend(*[each.to(self.attention) for each in (queries, keys, values)], cache).to(self.dtype)


fp32, bf16, fp16 = torch.float32, torch.bfloat16, torch.float16
# 名字 → 与谁只差一样、线性层、激活值的精度、注意力的精度。
PLANS = {
    "fp32": (None, PlainLinear, fp32, fp32),
    "fp32，权重重排": ("fp32", PackedLinear, fp32, fp32),
    "bf16": ("fp32，权重重排", PackedLinear, bf16, bf16),
    "fp16": ("fp32，权重重排", PackedLinear, fp16, fp16),
    # 缓存比权重小得多，不必省；16 位的注意力，有的 CPU 上没有快的内核。
    "bf16，注意力 fp32": ("bf16", PackedLinear, bf16, fp32),
    "int8 权重": ("bf16，注意力 fp32", Int8Linear, bf16, fp32),
    "int4 权重": ("int8 权重", Int4Linear, bf16, fp32),
    "int8 权重和激活值": ("fp32，权重重排", Int8DynamicLinear, fp32, fp32),
}


def perplexity(decoder, ids):
    """困惑度：一个词元一个词元地送，走的正是生成时的那条路。

    参数:
        decoder (LowBitDecoder): 模型
        ids (Tensor): 一段没有训练过的文本，(t,)

    返回:
        float: 困惑度
    """
    decoder.start(ids[None, :1])
    losses = [F.cross_entropy(decoder.forward(now[None, None])[0].float(), target[None]).item() for now, target in zip(ids[1:-1], ids[2:])]
    return math.exp(statistics.mean(losses))


def draw(per_token, limits, path):
    """一行一种：点是中位数，横线是四分位，红线是内存读取速度定下的上限。

    参数:
        per_token (dict): 名字 → 每个词元的秒数
        limits (dict): 名字 → 上限（词元/秒）
        path (Path): 图片写到哪里
    """
    figure, axis = plt.subplots(figsize=(7.6, 0.42 * len(per_token) + 1.4), layout="constrained")
    for y, (name, seconds) in enumerate(per_token.items()):
        low, middle, high = speeds(seconds)
        axis.barh(y, middle, color="tab:blue", alpha=0.6)
        axis.plot([low, high], [y, y], color="black", linewidth=2)
        axis.annotate(f"{middle:.1f}", (high, y), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9)
        axis.plot([limits[name]] * 2, [y - 0.4, y + 0.4], color="tab:red", linewidth=2, label=None if y else "上限：内存读取速度 ÷ 权重的字节数")
    axis.set_yticks(range(len(per_token)), list(per_token))
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.set_xlabel("词元/秒（黑线：一半的测量在这之间）")
    figure.legend(loc="outside lower center", fontsize=8)
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

os.environ["TIKTOKEN_CACHE_DIR"] = str(find_data("tiktoken"))  # GPT-2 的词表由 setup/run.sh 放好，不联网


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def main():
    """搭好每一种，一步一步轮流走，打印快慢和误差。"""
    parser = argparse.ArgumentParser(description="实验　把数变短，写一个词元要多久")
    parser.add_argument("--threads", type=int, default=1, help="几个线程（默认：1，别的程序忙不忙都量得准）")
    parser.add_argument("--new-tokens", type=int, default=64, help="生成几个词元（默认：64）")
    parser.add_argument("--pretrained", action="store_true", help="用 OpenAI 的 GPT-2 124M，再量困惑度（默认：同样大小的随机权重）")
    parser.add_argument("--quick", action="store_true", help="小模型（4 层、d = 256、V = 4096），少几个词元：看流程，不下结论")
    args = parser.parse_args()
    for name, low, high in [("threads", 1, 256), ("new_tokens", 8, 512)]:
        if not low <= getattr(args, name) <= high:
            parser.error(f"--{name.replace('_', '-')} 应在 {low} 到 {high} 之间，不能是 {getattr(args, name)}")
    ckpt = torch.load(find_data("gpt2-124M.pth"), map_location="cpu", weights_only=True) if args.pretrained else None
    config, new_tokens = ckpt["config"] if ckpt else QUICK_CONFIG if args.quick else GPT_CONFIG_124M, 12 if args.quick else args.new_tokens
    torch.set_num_threads(args.threads)
    torch.manual_seed(123)
    model = GPTModel(config).eval()
    if ckpt:
        model.load_state_dict(ckpt["model"])
    print(f"{config['n_layers']} 层，d = {config['emb_dim']}，权重{'是 OpenAI 的' if ckpt else '随机'}，{args.threads} 个线程；生成 {new_tokens} 个词元", flush=True)

    # ① 每一种，先试一试这台机器有没有这种内核。
    ids = torch.randint(config["vocab_size"], (1, PROMPT))  # (b, t)
    fused, decoders = fuse_qkv(model), {}
    for name, (_, *plan) in PLANS.items():
        try:
            decoder = LowBitDecoder(model, fused, *plan, capacity=max(PROMPT + new_tokens + 1, 258))
            decoder.start(ids)
            decoder.step()
            decoders[name] = decoder
        except (RuntimeError, NotImplementedError, AttributeError) as error:
            print(f"跳过「{name}」：这台机器的 PyTorch 不支持（{str(error).splitlines()[0][:60]}）")

    # ② 轮流量，一人写一个词元。
    block = torch.ones((32 if args.quick else 512) * 2**18)  # 一大块数，加起来比读内存快得多，量到的就是读
    seconds = in_turn({name: decoder.step for name, decoder in decoders.items()} | {"读内存": block.sum}, new_tokens, "写词元")
    bandwidth = block.nbytes / statistics.median(seconds.pop("读内存"))
    per_token = {name: values[2:] for name, values in seconds.items()}  # 头两步是热身
    limits = {name: bandwidth / decoder.nbytes for name, decoder in decoders.items()}

    # ③ 误差：大家看同一串词元，logits 的差别才只来自精度。
    logits = {}
    with torch.inference_mode():
        for name, decoder in decoders.items():
            decoder.start(ids[:, :1])
            logits[name] = torch.cat([decoder.forward(ids[:, i : i + 1])[:, -1].float() for i in range(1, PROMPT)])  # (t - 1, V)
        exact = model(ids)[0, 1:]  # (t - 1, V)
        held = torch.tensor(tiktoken.get_encoding("gpt2").encode(find_data("the-verdict.txt", "story-en.txt").read_text(encoding="utf-8"))[:257])
        quality = {name: perplexity(decoder, held) for name, decoder in decoders.items()} if ckpt else {}
    errors = {name: ((each - exact).abs().mean() / exact.std()).item() for name, each in logits.items()}

    print(f"\n内存读取 {bandwidth / 1e9:.1f} GB/s（把 {block.nbytes / 2**20:.0f} MB 加起来）")
    print("词元/秒（一半的测量在这之间）　占上限　读 MB　比此前最快的　只差一样　logits 误差" + ("　困惑度" if ckpt else ""))
    best, gains, steps = "fp32", {}, {}
    for name, decoder in decoders.items():
        low, half, high = speeds(per_token[name])
        line = f"{half:7.1f}（{low:6.1f} … {high:6.1f}）{half / limits[name]:9.0%}{decoder.nbytes / 1e6:7.0f}"
        parent = PLANS[name][0]
        if parent in decoders:
            gains[name], steps[name] = compare(per_token[best], per_token[name]), compare(per_token[parent], per_token[name])
            best = name if gains[name][0] > 1 else best
            line += f"{gains[name][0]:8.2f} 倍　　{steps[name][0]:6.2f} 倍"
        else:
            line += "　" * 13
        print(line + f"{errors[name]:10.2%}" + (f"{quality[name]:9.2f}" if ckpt else "") + f"　{name}" + (f"（与「{parent}」）" if parent in decoders else ""))
    if any(speeds(per_token[name])[1] > limits[name] for name in decoders):
        print("占上限超过 100%：权重有一部分留在 CPU 的缓存里，不必每次都到内存去读，这个上限就管不住它。")
    if not ckpt:
        print("logits 误差：与 fp32 的 GPTModel 相差多少，取平均，除以 logits 的标准差。权重是随机的，说不出 4 位伤不伤语言：那要真的模型来量困惑度（--pretrained）。")
    draw(per_token, limits, OUTPUTS / "fast_decode_lowbit.png")
    print(f"图片已写到 {OUTPUTS / 'fast_decode_lowbit.png'}")

    print("\n所以（都是这一次量的" + ("；--quick 模型太小、次数太少：看流程，不下结论）：" if args.quick else "）："))
    for name in [] if args.quick else steps:
        parent, (ratio, word) = PLANS[name][0], steps[name]
        print(f"  「{name}」与「{parent}」比：要读的少 {decoders[parent].nbytes / decoders[name].nbytes:.2f} 倍，速度是 {ratio:.2f} 倍，{word}。")
    if not args.quick:
        ratio, word = compare(per_token["fp32"], per_token[best])
        print(f"  最快的是「{best}」，速度是 fp32 的 {ratio:.1f} 倍；它要读的只有 1/{decoders['fp32'].nbytes / decoders[best].nbytes:.1f}。")

    print("\n这个数字对吗？")
    expected = 4 * (config["n_layers"] * 12 * config["emb_dim"] ** 2 + config["vocab_size"] * config["emb_dim"])
    read = decoders["fp32"].nbytes
    confirm(f"fp32 每个词元读 {read / 1e6:.1f} MB 权重 = 4 字节 ×（12 d² × 层数 + V d）", read == expected, "漏了输出层，或多算了词嵌入（词嵌入只查一行）")
    worst = max(errors[name] for name in ("fp32", "fp32，权重重排") if name in errors)
    confirm(f"fp32 的两种，logits 都与 GPTModel 相同（平均差标准差的 {worst:.0e}）", worst < 1e-4, "权重叠错了次序，或缓存错位")
    order = [name for name in ("fp32", "int8 权重", "int4 权重") if name in errors]
    confirm("位数越少，误差越大：" + "、".join(f"{name} {errors[name]:.2%}" for name in order), sorted(order, key=errors.get) == order, "步长或零点算错了")


if __name__ == "__main__":
    main()
