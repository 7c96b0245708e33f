"""第 4 章 · 实验　这台机器，用 GPT-2 生成文本最快能有多快？

问题：　GPT-2 124M，一次写一个词元，每秒能写几个？一次只改一样，每一步各快多少，差多少？
先猜：　每写一个词元，都要把全部权重从内存里读一遍。fp32 是 494 MB，内存每秒能读几十 GB：上限大约是多少？（先想 10 秒，再运行）
看点：　① 一个数也不改，只换矩阵乘法的实现，能快多少；② 数变短（32 → 16 → 8 → 4 位）之后，快的倍数和变短的倍数差多远；
        ③ 每一步的「占上限」：离内存的极限还有多远；④ 有的步没有用，梯子照实说。
动手改：1. 把 Int4Linear.group 从 32 改成 128：要读的更少，logits 误差更大。
        2. 把 Int8Linear 里的 / 127 改成 / 7，就只剩 15 个值，与 4 位差不多：误差比 Int4Linear 还大，自查变成 ✗；差在一整行共用一个步长。
        3. 运行前加 OMP_NUM_THREADS=1，只用一个核：哪几步变慢了，哪几步没变？没变的，本来就只有一个核在读内存。

运行：
    python ch04/experiments/exp_fast_decode.py                   # 权重随机；装了 transformers 就一起比
    python ch04/experiments/exp_fast_decode.py --pretrained      # 用 OpenAI 的权重，困惑度也用它量（先运行 ch05/main/gpt_download.py）
    python ch04/experiments/exp_fast_decode.py --compile         # 再加一步 torch.compile（要有 C++ 编译器，慢）
    python ch04/experiments/exp_fast_decode.py --quick
    约 2 分半，5.8 GB（2 核 CPU）

形状记号：b 批大小　t 这一次送进来几个词元　s 连同缓存一共几个　d 嵌入维度　h 头数　k 每个头的维度　V 词表大小
"""

import argparse
import copy
import math
import os
import sys
import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import matplotlib.pyplot as plt
import tiktoken
import torch
import torch.nn as nn
import torch.nn.functional as F
import zhplot  # noqa: F401　导入它，图上就能写中文
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
GPT_CONFIG_124M = {"vocab_size": 50257, "context_length": 1024, "emb_dim": 768, "n_heads": 12, "n_layers": 12, "drop_rate": 0.0, "qkv_bias": True}
QUICK_CONFIG = GPT_CONFIG_124M | {"emb_dim": 256, "n_heads": 4, "n_layers": 4, "context_length": 256}
# 量困惑度要一个训练过的模型。没有真的权重，就当场训练一个小的：词元就是字节，V = 256，不用分词器。
SMALL_CONFIG = {"vocab_size": 256, "context_length": 128, "emb_dim": 256, "n_heads": 4, "n_layers": 4, "drop_rate": 0.0, "qkv_bias": True}


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


class PlainLinear:
    """线性层，PyTorch 平常的写法：F.linear。fp32 时，x86 上它调用 Intel 的 MKL。

    参数:
        weight (Tensor): 权重，（输出，输入）
        bias (Tensor 或 None): 偏置
        dtype (torch.dtype): 用什么精度存、用什么精度算
    """

    def __init__(self, weight, bias, dtype):
        self.weight, self.bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        self.nbytes = self.weight.nbytes  # 每个词元要从内存读多少字节；偏置小得可以忽略

    def __call__(self, x):
        """算 x 乘权重的转置，加偏置。

        参数:
            x (Tensor): t 行，每行一个词元

        返回:
            Tensor: t 行，列数是输出维度
        """
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
        """算 x 乘权重的转置，加偏置。

        参数:
            x (Tensor): t 行，每行一个词元

        返回:
            Tensor: t 行，列数是输出维度
        """
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


class Int8Linear:
    """8 位整数：权重的每一行除以自己的步长，四舍五入到 −127…127；激活值在算的时候现量、现转。

    参数:
        weight (Tensor): 权重，（输出，输入）
        bias (Tensor 或 None): 偏置
        dtype (torch.dtype): 输入输出的精度，只能是 float32
    """

    def __init__(self, weight, bias, dtype):
        weight = weight.float()
        scale = weight.abs().amax(dim=1).clamp(min=1e-8) / 127  # 每一行各用各的步长：一行里最大的数，正好是 127 步
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 这组接口将来要搬到 torchao，现在仍是 CPU 上最快的
            quantized = torch.quantize_per_channel(weight, scale.double(), torch.zeros(len(weight), dtype=torch.int64), 0, torch.qint8)
            self.packed = torch.ops.quantized.linear_prepack(quantized, None if bias is None else bias.float())
        self.nbytes = weight.numel()

    def __call__(self, x):
        """算 x 乘权重的转置，加偏置。

        参数:
            x (Tensor): t 行，每行一个词元

        返回:
            Tensor: t 行，列数是输出维度
        """
        return torch.ops.quantized.linear_dynamic(x, self.packed)


class Int4Linear:
    """4 位整数：每 32 个权重一组，各有自己的步长和零点，四舍五入到 0…15。

    参数:
        weight (Tensor): 权重，（输出，输入），输入维度要能被每组的大小整除
        bias (Tensor 或 None): 偏置
        dtype (torch.dtype): 输入输出的精度
    """

    group = 32  # 每组几个：小，误差小，但步长和零点也要读；32 个一组，平均每个权重是 4 + 32/32 = 5 位

    def __init__(self, weight, bias, dtype):
        weight, self.rows = weight.float(), len(weight)
        weight = F.pad(weight, (0, 0, 0, -self.rows % 64))  # 内核要求输出维度是 64 的倍数，补几行 0，算完再切掉
        groups = weight.view(len(weight), -1, self.group)  # (V, d / 32, 32)　V 这里是输出维度
        low, high = groups.amin(dim=-1), groups.amax(dim=-1)
        scale = (high - low).clamp(min=1e-6) / 15
        steps = ((groups - low[..., None]) / scale[..., None]).round().clamp(0, 15)
        self.packed = torch._convert_weight_to_int4pack_for_cpu(steps.to(torch.int32).view(weight.shape), 1)  # (V, d / 2)　两个 4 位挤一个字节
        # 内核算的是 (q − 8) · scale + zero，所以零点取中间那一步（第 8 步）的值。
        self.scales = torch.stack([scale, low + 8 * scale], dim=-1).transpose(0, 1).contiguous().to(dtype)  # (d / 32, V, 2)
        self.bias = None if bias is None else bias.to(dtype)
        self.nbytes = self.packed.nbytes + self.scales.nbytes

    def __call__(self, x):
        """算 x 乘权重的转置，加偏置。

        参数:
            x (Tensor): t 行，每行一个词元

        返回:
            Tensor: t 行，列数是输出维度
        """
        y = torch._weight_int4pack_mm_for_cpu(x, self.packed, self.group, self.scales)[:, : self.rows]
        return y if self.bias is None else y + self.bias


class Decoder:
    """GPT-2，批大小 1，只做推理：同一段前向传播，换着线性层、精度和缓存来跑。

    参数:
        model (GPTModel): 权重从这里来
        linear (type): 用哪种线性层
        dtype (torch.dtype): 激活值的精度
        preallocated (bool): KV 缓存是预分配（True），还是每步拼接（False）
        cache_dtype (torch.dtype 或 None): KV 缓存和注意力的精度；None 就与激活值相同
    """

    def __init__(self, model, linear, dtype, preallocated=True, cache_dtype=None):
        self.dtype, self.preallocated, self.cache_dtype = dtype, preallocated, cache_dtype or dtype
        self.tok_emb, self.pos_emb = model.tok_emb.weight.detach().to(dtype), model.pos_emb.weight.detach().to(dtype)
        self.layers = []
        with torch.no_grad():
            for block in model.trf_blocks:
                att, qkv = block.att, (block.att.W_query, block.att.W_key, block.att.W_value)
                # Q、K、V 叠成一个大矩阵：三次小乘法变一次大的，读的权重一样多，调用少两次。
                weight, bias = torch.cat([each.weight for each in qkv]), torch.cat([each.bias for each in qkv])  # (3d, d)，(3d,)
                linears = [(weight, bias), *[(each.weight, each.bias) for each in (att.out_proj, block.ff.layers[0], block.ff.layers[2])]]
                norms = [(norm.scale.to(dtype), norm.shift.to(dtype)) for norm in (block.norm1, block.norm2)]
                self.layers.append((*norms, *[linear(*pair, dtype) for pair in linears]))
            self.final_norm = (model.final_norm.scale.to(dtype), model.final_norm.shift.to(dtype))
            self.out_head = linear(model.out_head.weight, None, dtype)
        self.linears = [each for layer in self.layers for each in layer[2:]] + [self.out_head]
        self.nbytes = sum(each.nbytes for each in self.linears)
        self.heads, self.head_dim = att.num_heads, att.head_dim
        shape = (len(self.layers), self.heads, len(self.pos_emb), self.head_dim) if preallocated else (len(self.layers), self.heads, 0, self.head_dim)
        self.keys, self.values = ([*torch.zeros(shape, dtype=self.cache_dtype)] for _ in range(2))  # 每层一个 (h, s, k)，预分配时 s 留满上下文长度
        self.length = 0

    def reset(self):
        """清空缓存。"""
        self.length = 0
        if not self.preallocated:
            self.keys, self.values = ([each[:, :0] for each in cache] for cache in (self.keys, self.values))

    def store(self, i, keys, values):
        """把新的键和值放进第 i 层的缓存。

        参数:
            i (int): 第几层
            keys (Tensor): 新词元的键，(h, t, k)
            values (Tensor): 新词元的值，(h, t, k)

        返回:
            tuple[Tensor, Tensor]: 连同以前的，(h, s, k)
        """
        start, s = self.length, self.length + keys.shape[1]
        if not self.preallocated:
            self.keys[i] = torch.cat([self.keys[i], keys], dim=1)  # (h, s, k)
            self.values[i] = torch.cat([self.values[i], values], dim=1)  # (h, s, k)
            return self.keys[i], self.values[i]
        self.keys[i][:, start:s], self.values[i][:, start:s] = keys, values
        return self.keys[i][:, :s], self.values[i][:, :s]

    @torch.inference_mode()
    def forward(self, ids, only_last=False):
        """前向传播。

        参数:
            ids (Tensor): 新词元的编号，(t,)；缓存不是空的时候，t 必须是 1
            only_last (bool): 只要最后一个位置的 logits；送提示词时，前面那些位置的没有用，输出层又是最大的一个矩阵

        返回:
            Tensor: logits，每个位置一行，V 列
        """
        t, d = len(ids), self.tok_emb.shape[1]
        x = self.tok_emb[ids] + self.pos_emb[self.length : self.length + t]  # (t, d)
        for i, (norm1, norm2, qkv, out_proj, up, down) in enumerate(self.layers):
            mixed = qkv(F.layer_norm(x, (d,), *norm1)).to(self.cache_dtype)  # (t, 3d)
            queries, keys, values = mixed.view(t, 3, self.heads, self.head_dim).permute(1, 2, 0, 3)  # (h, t, k)　三个都是
            keys, values = self.store(i, keys, values)
            # 一次送进几个时才要掩码。is_causal 的掩码从左上角画起，缓存里已经有词元时就画错了：所以只许 t = 1，或者缓存是空的。
            context = F.scaled_dot_product_attention(queries[None], keys[None], values[None], is_causal=t > 1)[0]  # (h, t, k)
            x = x + out_proj(context.transpose(0, 1).reshape(t, d).to(self.dtype))  # (t, d)
            x = x + down(F.gelu(up(F.layer_norm(x, (d,), *norm2)), approximate="tanh"))
        self.length += t
        return self.out_head(F.layer_norm(x[-1:] if only_last else x, (d,), *self.final_norm))

    def generate(self, ids, max_new_tokens):
        """贪心解码。

        参数:
            ids (Tensor): 提示词，(t,)
            max_new_tokens (int): 生成几个

        返回:
            list[int]: 新生成的编号
        """
        self.reset()
        new = [self.forward(ids, only_last=True)[0].argmax()]
        while len(new) < max_new_tokens:
            new.append(self.forward(new[-1][None])[0].argmax())
        return torch.stack(new).tolist()

    @torch.inference_mode()
    def only_multiply(self):
        """只做一个词元要做的全部矩阵乘法，别的都不做：这是生成速度的上限，用来看其余的事占多少时间。

        返回:
            float: 秒数
        """
        d = self.tok_emb.shape[1]
        inputs = [torch.ones(1, d, dtype=self.dtype), torch.ones(1, 4 * d, dtype=self.dtype)]
        start = time.perf_counter()
        for number, linear in enumerate(self.linears):
            linear(inputs[number % 4 == 3 and linear is not self.out_head])  # 每块的第四个是 4d → d
        return time.perf_counter() - start


def perplexity(decoder, ids, length):
    """困惑度：一个词元一个词元地送，走的正是生成时的那条路。

    参数:
        decoder (Decoder): 模型
        ids (Tensor): 一段没有训练过的文本，(t,)
        length (int): 每段几个词元，段与段之间清空缓存

    返回:
        float: 困惑度
    """
    losses = []
    for part in ids.split(length + 1):
        decoder.reset()
        for now, target in zip(part[:-1], part[1:]):
            losses.append(F.cross_entropy(decoder.forward(now[None]).float(), target[None]).item())
    return math.exp(sum(losses) / len(losses))


def train_small_model(text, steps):
    """当场训练一个字节级的小模型，好让困惑度有意义：随机的权重，怎么改困惑度都差不多。

    参数:
        text (str): 文本，前九成训练，后一成留给困惑度
        steps (int): 训练几步

    返回:
        tuple[GPTModel, Tensor]: 模型，和留出来的字节
    """
    ids = torch.tensor(list(text.encode("utf-8")))
    cut, t = len(ids) * 9 // 10, SMALL_CONFIG["context_length"]
    torch.manual_seed(123)
    model = GPTModel(SMALL_CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    for _ in tqdm(range(steps), desc="训练小模型", unit="步", leave=False):
        starts = torch.randint(cut - t - 1, (8,)).tolist()
        batch = torch.stack([ids[start : start + t + 1] for start in starts])  # (b, t + 1)
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), ids[cut:]


def transformers_peers(model, config):
    """同一份权重装进 transformers 的 GPT-2，fp32 和 bf16 各一个。

    参数:
        model (GPTModel): 权重从这里来
        config (dict): 模型配置

    返回:
        dict: 名字 → 生成函数，与 Decoder.generate 同样的参数和结果；没有装 transformers 时是空的
    """
    if not find_spec("transformers"):
        print("没有装 transformers，不和它比（想比：pip install transformers）")
        return {}
    from transformers import GPT2Config, GPT2LMHeadModel, logging  # 导入要几秒，真要比时才做

    logging.set_verbosity_error()
    sizes = {"n_positions": config["context_length"], "n_embd": config["emb_dim"], "n_head": config["n_heads"], "n_layer": config["n_layers"]}
    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=config["vocab_size"], **sizes, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None)).eval()
    state = {"wte.weight": model.tok_emb.weight, "wpe.weight": model.pos_emb.weight, "ln_f.weight": model.final_norm.scale, "ln_f.bias": model.final_norm.shift}
    for i, block in enumerate(model.trf_blocks):
        qkv = (block.att.W_query, block.att.W_key, block.att.W_value)
        state |= {f"h.{i}.attn.c_attn.weight": torch.cat([each.weight for each in qkv]).T, f"h.{i}.attn.c_attn.bias": torch.cat([each.bias for each in qkv])}
        for name, linear in [("attn.c_proj", block.att.out_proj), ("mlp.c_fc", block.ff.layers[0]), ("mlp.c_proj", block.ff.layers[2])]:
            state |= {f"h.{i}.{name}.weight": linear.weight.T, f"h.{i}.{name}.bias": linear.bias}
        for name, norm in [("ln_1", block.norm1), ("ln_2", block.norm2)]:
            state |= {f"h.{i}.{name}.weight": norm.scale, f"h.{i}.{name}.bias": norm.shift}
    theirs.transformer.load_state_dict(state, strict=False)
    theirs.lm_head.load_state_dict({"weight": model.out_head.weight})
    half = copy.deepcopy(theirs).to(torch.bfloat16)

    def run(model):
        def generate(ids, max_new_tokens):
            settings = {"max_new_tokens": max_new_tokens, "min_new_tokens": max_new_tokens, "do_sample": False, "pad_token_id": 0}
            return model.generate(ids[None], attention_mask=torch.ones_like(ids[None]), **settings)[0, len(ids) :].tolist()

        return generate

    return {"transformers fp32": run(theirs), "transformers bf16": run(half)}


def read_speed(block):
    """内存的读取速度：把一大块数加起来，加法比读内存快得多，量到的就是读。

    参数:
        block (Tensor): 一大块 float32，远大于缓存

    返回:
        float: 每秒读几个字节
    """
    start = time.perf_counter()
    block.sum()
    return block.nbytes / (time.perf_counter() - start)


def pad(text, width):
    """补空格到同样宽；一个汉字占两格，str.ljust 不知道这一点。

    参数:
        text (str): 文字
        width (int): 占几格

    返回:
        str: 补好的文字
    """
    return text + " " * (width - sum(2 if ord(char) > 0x2E80 else 1 for char in text))


def draw(rows, path):
    """画每一步的速度，和按内存读取速度算出的上限。

    参数:
        rows (list[tuple]): 每步一项：名字、词元/秒、上限（没有就是 None）
        path (Path): 图片写到哪里
    """
    figure, axis = plt.subplots(figsize=(7.2, 0.42 * len(rows) + 1.3), layout="constrained")
    names = [name for name, *_ in rows]
    speeds = [speed for _, speed, _ in rows]
    bars = axis.barh(names, speeds, color=["tab:gray" if "transformers" in name else "tab:blue" for name, *_ in rows])
    axis.bar_label(bars, fmt="%.1f", padding=3)
    limits = [(limit, row) for row, (_, _, limit) in enumerate(rows) if limit]
    axis.scatter(*zip(*limits), marker="|", s=260, color="tab:red", label="上限：内存读取速度 ÷ 权重的字节数")
    axis.invert_yaxis()
    axis.margins(x=0.1)
    axis.set_xlabel("词元/秒")
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
    """搭好每一级，轮流跑几轮，打印梯子。"""
    parser = argparse.ArgumentParser(description="实验　GPT-2 最快能有多快")
    parser.add_argument("--rounds", type=int, help="轮流跑几轮，取中位数（默认：3；--quick 时 2）")
    parser.add_argument("--prompt-tokens", type=int, help="提示词几个词元（默认：64；--quick 时 16）")
    parser.add_argument("--new-tokens", type=int, help="生成几个词元（默认：128；--quick 时 32）")
    parser.add_argument("--pretrained", action="store_true", help="用 OpenAI 的 GPT-2 124M（默认：同样大小的随机权重，快慢一样）")
    parser.add_argument("--compile", action="store_true", help="最后加一步 torch.compile，要有 C++ 编译器，多等一两分钟")
    parser.add_argument("--no-peers", action="store_true", help="不与 transformers 比")
    parser.add_argument("--quick", action="store_true", help="换小模型（4 层、d = 256），少跑几个词元，也不与 transformers 比")
    args = parser.parse_args()
    ckpt = torch.load(find_data("gpt2-124M.pth"), map_location="cpu", weights_only=True) if args.pretrained else None
    config = ckpt["config"] if ckpt else QUICK_CONFIG if args.quick else GPT_CONFIG_124M
    for name, quick, full in [("rounds", 2, 3), ("prompt_tokens", 16, 64), ("new_tokens", 32, 128)]:
        if getattr(args, name) is None:
            setattr(args, name, quick if args.quick else full)
        if not 2 <= getattr(args, name) <= 512:
            parser.error(f"--{name.replace('_', '-')} 应在 2 到 512 之间，不能是 {getattr(args, name)}")
    if args.prompt_tokens + args.new_tokens > config["context_length"]:
        parser.error(f"提示词 {args.prompt_tokens} 加上新生成的 {args.new_tokens}，超过了上下文长度 {config['context_length']}")
    print(f"PyTorch {torch.__version__}，{torch.get_num_threads()} 个线程；{config['n_layers']} 层，d = {config['emb_dim']}；", end="")
    print(f"提示词 {args.prompt_tokens} 个词元，生成 {args.new_tokens} 个，批大小 1", flush=True)

    # ① 模型，和量困惑度用的模型、文本。
    torch.manual_seed(123)
    text_path, model = find_data("the-verdict.txt", "story-en.txt"), GPTModel(config).eval()
    text = text_path.read_text(encoding="utf-8")
    if ckpt:
        model.load_state_dict(ckpt["model"])
        judge, held = model, torch.tensor(tiktoken.get_encoding("gpt2").encode(text)[:257])
    else:
        judge, held = train_small_model(text, steps=20 if args.quick else 150)
    print(f"权重　{'OpenAI 的，困惑度也用它' if ckpt else '随机，困惑度用当场训练的字节级小模型'}；文本 {text_path.name}")
    held, segment = held[: 129 if args.quick else 513], min(128, judge.pos_emb.num_embeddings)
    ids = torch.randint(config["vocab_size"], (args.prompt_tokens,), generator=torch.Generator().manual_seed(1))

    # ② 梯子：每一级与上一级只差一样。
    fp32, bf16 = torch.float32, torch.bfloat16
    plans = {
        "KV 缓存 fp32": (PlainLinear, fp32, False),
        "＋oneDNN 重排": (PackedLinear, fp32, False),
        "＋预分配缓存": (PackedLinear, fp32, True),
        "bf16": (PlainLinear, bf16, True),
        "bf16 ＋重排": (PackedLinear, bf16, True),
        "fp16": (PlainLinear, torch.float16, True),
        # 缓存比权重小得多（192 个词元，fp32 也只有 14 MB），不必省；16 位的注意力在 CPU 上没有快的内核，换成 fp32 反而快。
        "＋注意力用 fp32": (PlainLinear, torch.float16, True, fp32),
        "int8": (Int8Linear, fp32, True),
        "int4": (Int4Linear, bf16, True, fp32),
    }
    decoders, quality = {}, {}
    for name, plan in plans.items():
        try:
            decoder, small = Decoder(model, *plan), Decoder(judge, *plan)
            decoder.forward(ids[:2])  # 试一试这台机器有没有这种内核
            quality[name] = perplexity(small, held, segment)
            decoders[name] = decoder
        except (RuntimeError, NotImplementedError, AttributeError) as error:
            print(f"跳过「{name}」：这台机器的 PyTorch 不支持（{str(error).splitlines()[0][:60]}）")
    if args.compile:
        name = list(decoders)[-1] + " ＋compile"
        compiled = copy.copy(decoders[list(decoders)[-1]])
        compiled.keys, compiled.values = ([each.clone() for each in cache] for cache in (compiled.keys, compiled.values))
        compiled.forward = torch.compile(compiled.forward, dynamic=True)
        start = time.perf_counter()
        try:
            compiled.generate(ids, 4)
            decoders[name] = compiled
            print(f"torch.compile 编译了 {time.perf_counter() - start:.0f} 秒")
        except Exception as error:  # 没有编译器、不支持的系统，各有各的错法
            print(f"跳过 torch.compile：编译不成（{str(error).splitlines()[0][:60]}）")
    peers = {} if args.quick or args.no_peers else transformers_peers(model, config)

    # ③ 轮流跑。比值只在同一轮里才可信：虚拟机的内存带宽几分钟里就能差一倍。
    runners = {**{name: decoder.generate for name, decoder in decoders.items()}, **peers}
    seconds, multiply, tokens, reads, no_cache = {name: [] for name in runners}, {name: [] for name in decoders}, {}, [], []
    block, middle = torch.ones((128 if args.quick else 512) * 2**18), torch.randint(config["vocab_size"], (1, args.prompt_tokens + args.new_tokens // 2))
    for generate in runners.values():
        generate(ids, 4)  # 热身
    for _ in tqdm(range(args.rounds), desc="轮流跑", unit="轮", leave=False):
        for name, generate in runners.items():
            start = time.perf_counter()
            tokens[name] = generate(ids, args.new_tokens)
            seconds[name].append((time.perf_counter() - start) / args.new_tokens)
            if name in decoders:
                multiply[name] += [decoders[name].only_multiply() for _ in range(5)]
            reads += [read_speed(block) for _ in range(2)]
        start = time.perf_counter()
        with torch.no_grad():
            model(middle)[:, -1].argmax()  # 不缓存太慢，只量一步：长度取一半处，正好是平均
        no_cache.append(time.perf_counter() - start)

    # ④ 打印梯子。
    first, bandwidth = next(iter(decoders)), median(reads)
    base, speeds = decoders[first], {name: 1 / median(values) for name, values in seconds.items()}
    sequence, logits = torch.cat([ids, torch.tensor(tokens[first][:-1])]), {}  # (s,)　大家都看同一串词元，logits 的差别才只来自精度
    for name in [name for name in decoders if name in plans]:
        decoders[name].reset()
        logits[name] = decoders[name].forward(sequence)[len(ids) - 1 :].float()  # (n, V)
    spread = logits[first].std().item()
    errors = {name: (each - logits[first]).abs().mean().item() / spread for name, each in logits.items()}
    print(f"\n内存读取 {bandwidth / 1e9:.1f} GB/s（把 {block.nbytes / 2**20:.0f} MB 加起来，{len(reads)} 次的中位数，最差 {min(reads) / 1e9:.1f}、最好 {max(reads) / 1e9:.1f}）")
    print(pad("一级一级", 22) + "  词元/秒 [最差…最好]   比上一级  读 MB  占读取上限  占乘法上限  相同词元  logits 误差  困惑度（变化）")
    previous, shares = 1 / median(no_cache), {}
    rows = [("不缓存（书上的写法）", previous, None)]
    print(f"{pad(rows[0][0], 22)}{previous:9.1f}")
    for name, decoder in decoders.items():
        limit, speed = bandwidth / decoder.nbytes, speeds[name]
        shares[name] = speed * median(multiply[name])
        same = sum(a == b for a, b in zip(tokens[name], tokens[first]))
        span = f"[{1 / max(seconds[name]):.1f}…{1 / min(seconds[name]):.1f}]"
        line = f"{pad(name, 22)}{speed:9.1f} {span:<14}{speed / previous:7.2f} 倍{decoder.nbytes / 1e6:7.0f}"
        line += f"{speed / limit:12.0%}{shares[name]:12.0%}{same:6}/{args.new_tokens}"
        print(line + (f"{errors[name]:13.2%}{quality[name]:10.3f}（{quality[name] / quality[first] - 1:+.2%}）" if name in errors else ""))
        rows.append((name, speed, limit))
        previous = speed
    for name in peers:
        same = sum(a == b for a, b in zip(tokens[name], tokens[first]))
        print(f"{pad(name, 22)}{speeds[name]:9.1f} [{1 / max(seconds[name]):.1f}…{1 / min(seconds[name]):.1f}]　相同词元 {same}/{args.new_tokens}")
        rows.append((name, speeds[name], None))
    if any(speed > limit for _, speed, limit in rows if limit):
        print("占读取上限超过 100%：这台 CPU 的缓存装得下全部或大半权重，不必每次都到内存里读。")
    print("logits 误差：与第一级相差多少，取平均，除以 logits 的标准差。权重随机时许多词元几乎打平，末位一差就各走各的，「相同词元」比训练过的模型少得多。")
    draw(rows, OUTPUTS / "fast_decode.png")
    print(f"图片已写到 {OUTPUTS / 'fast_decode.png'}")

    print("\n所以（都是这一次量的）：")
    steps = [(before, after, after_speed / before_speed) for (before, before_speed, _), (after, after_speed, _) in zip(rows, rows[1 : len(decoders) + 1])]
    best_step, fastest = max(steps[1:], key=lambda step: step[2]), max(decoders, key=speeds.get)
    print(f"  最快的是「{fastest}」，{speeds[fastest]:.1f} 词元/秒，是不缓存的 {speeds[fastest] / rows[0][1]:.0f} 倍；有了缓存以后，最有用的一步是「{best_step[1]}」，{best_step[2]:.2f} 倍。")
    for before, after, ratio in steps:
        if ratio < 1.03:
            print(f"  「{after}」没有帮助：是「{before}」的 {ratio:.2f} 倍。")
    for peer, ours in [("transformers fp32", ["＋预分配缓存", "int8", "int4"]), ("transformers bf16", ["bf16 ＋重排", "fp16", "＋注意力用 fp32"])]:
        if peer in peers:
            print(f"  与 {peer} 比：" + "，".join(f"「{name}」{speeds[name] / speeds[peer]:.2f} 倍" for name in ours if name in decoders) + "。")
    least = min(shares, key=shares.get)
    print(f"  每个词元的时间里（提示词那一段也摊进来），矩阵乘向量占：「{first}」{shares[first]:.0%}，「{least}」{shares[least]:.0%}；其余是注意力、归一化、Python，和提示词那一段。")

    print("\n这个数字对吗？")
    expected = 4 * (config["n_layers"] * 12 * config["emb_dim"] ** 2 + config["vocab_size"] * config["emb_dim"])
    confirm(f"fp32 每个词元读 {base.nbytes / 1e6:.1f} MB 权重 = 4 字节 ×（12 d² × 层数 + V d）", base.nbytes == expected, "漏了输出层，或多算了词嵌入（词嵌入只查一行，不用全读）")
    with torch.no_grad():
        reference = model(sequence[None])[0, len(ids) - 1 :]  # (n, V)
    exact = [name for name, (_, dtype, *_) in plans.items() if name in decoders and dtype is fp32 and name != "int8"]
    worst = max((reference - logits[name]).abs().max().item() / spread for name in exact)
    confirm(f"fp32 的各级，logits 都与 gpt.py 相同（最多差标准差的 {worst:.0e}）", worst < 1e-3, "权重叠错了次序，或缓存错位")
    top = reference.topk(2, dim=-1).values
    ties = (top[:, 0] - top[:, 1]) < 1e-4 * spread
    for name in [name for name in ("＋oneDNN 重排", "＋预分配缓存", "transformers fp32") if name in tokens]:
        ok = next((bool(tie) for a, b, tie in zip(tokens[name], tokens[first], ties) if a != b), True)
        confirm(f"「{name}」的 {args.new_tokens} 个词元与第一级逐个相同", ok, "不只是换了实现，算的东西也变了")
    if {"int8", "int4"} <= errors.keys():
        confirm(f"位数越少，误差越大：int8 {errors['int8']:.2%} < int4 {errors['int4']:.2%}", errors["int8"] < errors["int4"], "步长或零点算错了")


if __name__ == "__main__":
    main()
