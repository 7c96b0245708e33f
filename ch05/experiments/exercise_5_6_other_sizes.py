"""第 5 章 · 练习 5.6　换成最大的 1558M，要改几行？

题目：　把 124M 换成 1558M，代码要改哪里？写的东西和 124M 有什么不同？
先想：　参数多了 12 倍多，内存也要 12 倍吗？写一个词元的时间呢？（先想 10 秒，再运行）
解法：　① 四种规模各有多少参数、文件多大、占多少内存，一张表算清楚；② 只改规模的名字，同一套代码装两种"假装的规模"；③ 有真的 1558M，就让它写。
学到：　要改的只有两处：下载时的 model_size，和配置里的宽度、层数、头数；装权重的代码一行不改，因为每一块的零件都相同。
　　　　块里的参数 ≈ 12 · 层数 · d²：层数 4 倍、宽度 2.1 倍，乘起来约 17 倍；词嵌入只长 2.1 倍，所以总共 12.5 倍；内存、每个词元的计算量，都差不多跟着参数走。

运行：
    python ch05/experiments/exercise_5_6_other_sizes.py                # 表、两种假装的规模；下载过 1558M 就让它写
    python ch05/experiments/exercise_5_6_other_sizes.py --size 355M    # 让别的规模写；先下载：python setup/download.py gpt2-355M
    python ch05/experiments/exercise_5_6_other_sizes.py --quick        # 只写 4 个词元
    没有权重时约 2 秒，0.4 GB（2 核 CPU）；1558M 约要 6.6 GB 内存

形状记号：　b 批大小　　t 序列长度（token 数）　　d 嵌入维度　　h 头数　　k 每个头的维度　　V 词表大小
"""

import argparse
import math
import os
import re
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import tiktoken
import torch
import torch.nn as nn
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

# 公开的参数个数（输出层与词嵌入算一份），用来核对。
PUBLISHED = {"124M": 124_439_808, "355M": 354_823_168, "774M": 774_030_080, "1558M": 1_557_611_200}
# 原书 5.5 节（124M）和这道练习（1558M）写的，种子 123，温度 1.5，top_k 50。
BOOK = {
    "124M": "Every effort moves you toward finding an ideal new way to practice something!\n\nWhat makes us want to be on top of that?",
    "1558M": "Every effort moves you toward finding an ideal life. You don't have to accept your current one at once, because if you do you'll never",
}


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


# region 沿用 ch05/main/gpt_download.py: GPT2_SETTINGS, gpt2_shapes, find_gpt2_file, load_gpt2_params_from_safetensors
GPT2_SETTINGS = {
    "124M": {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12},
    "355M": {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 1024, "n_head": 16, "n_layer": 24},
    "774M": {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 1280, "n_head": 20, "n_layer": 36},
    "1558M": {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 1600, "n_head": 25, "n_layer": 48},
}


def gpt2_shapes(settings):
    """列出 GPT-2 的权重文件里应有的每一项：名字和形状。（详解见 ch05/main/gpt_download.py）"""
    d = settings["n_embd"]
    block = {
        "ln_1.weight": (d,), "ln_1.bias": (d,),
        "attn.c_attn.weight": (d, 3 * d), "attn.c_attn.bias": (3 * d,),
        "attn.c_proj.weight": (d, d), "attn.c_proj.bias": (d,),
        "ln_2.weight": (d,), "ln_2.bias": (d,),
        "mlp.c_fc.weight": (d, 4 * d), "mlp.c_fc.bias": (4 * d,),
        "mlp.c_proj.weight": (4 * d, d), "mlp.c_proj.bias": (d,),
    }
    shapes = {"wte.weight": (settings["n_vocab"], d), "wpe.weight": (settings["n_ctx"], d)}
    for layer in range(settings["n_layer"]):
        shapes |= {f"h.{layer}.{name}": shape for name, shape in block.items()}
    return shapes | {"ln_f.weight": (d,), "ln_f.bias": (d,)}


def find_gpt2_file(model_size, models_dir=None):
    """找一种规模的权重文件 gpt2-规模.safetensors。（详解见 ch05/main/gpt_download.py）"""
    if model_size not in GPT2_SETTINGS:
        raise ValueError(f"没有 {model_size} 这种规模，可选：{'、'.join(GPT2_SETTINGS)}")
    name = f"gpt2-{model_size}.safetensors"
    if models_dir and (Path(models_dir) / name).is_file():
        return Path(models_dir) / name
    try:
        return find_data(name)
    except FileNotFoundError:
        raise FileNotFoundError(f"找不到 {name}，请先下载：python setup/download.py gpt2-{model_size}") from None


def load_gpt2_params_from_safetensors(path, settings):
    """把一个 safetensors 文件里的权重，整理成原书的 params：按层、按部件一级一级地放。（详解见 ch05/main/gpt_download.py）"""
    try:
        file = safe_open(path, framework="pt")
    except (SafetensorError, OSError):
        raise ValueError(f"{path} 读不出来：不是 safetensors 文件，或没有下载完整（核对：python setup/download.py --verify）") from None
    with file:
        stored = {name.removeprefix("transformer."): name for name in file.keys()}
        names = [name for name in stored if not re.fullmatch(r"h\.\d+\.attn\.(bias|masked_bias)|lm_head\.weight", name)]
        wanted, found = gpt2_shapes(settings), {name: tuple(file.get_slice(stored[name]).get_shape()) for name in names}
        for size, other in GPT2_SETTINGS.items():
            if found != wanted and found == gpt2_shapes(other):
                raise ValueError(f"{path} 是 {size} 的权重，要的却是 {settings['n_layer']} 层、{settings['n_embd']} 维的")
        wrong = [f"少了 {name}" for name in wanted if name not in found] + [f"多出 {name}" for name in found if name not in wanted]
        wrong += [f"{name} 的形状是 {found[name]}，应是 {wanted[name]}" for name in wanted if found.get(name, wanted[name]) != wanted[name]]
        if wrong:
            raise ValueError(f"{path} 不是 {settings['n_layer']} 层、{settings['n_embd']} 维的 GPT-2，有 {len(wrong)} 处对不上：{wrong[0]}")
        params = {"blocks": [{} for _ in range(settings["n_layer"])]}
        outside = {"wte.weight": "wte", "wpe.weight": "wpe", "ln_f.weight": "g", "ln_f.bias": "b"}
        for name in wanted:
            tensor = file.get_tensor(stored[name])
            if not tensor.is_floating_point():
                raise ValueError(f"{path} 里 {name} 是整数（{tensor.dtype}），是量化过的权重，这里读不了")
            inner, key = params, outside.get(name)
            if key is None:
                _, layer, *parts, last = name.split(".")
                inner = params["blocks"][int(layer)]
                for part in parts:
                    inner = inner.setdefault(part, {})
                key = "b" if last == "bias" else "g" if parts[0].startswith("ln") else "w"
            inner[key] = tensor.float().numpy()
        if "lm_head.weight" in stored and not file.get_tensor(stored["lm_head.weight"]).float().equal(file.get_tensor(stored["wte.weight"]).float()):
            raise ValueError(f"{path} 的输出层与词嵌入不是同一个矩阵，原书的 params 里没有放它的地方")
    return params


# endregion


# region 沿用 ch05/main/gpt_generate.py: MODEL_CONFIGS, BASE_CONFIG, SIZES, generate, assign, load_weights_into_gpt
MODEL_CONFIGS = {
    "gpt2-small (124M)": {"emb_dim": 768, "n_layers": 12, "n_heads": 12},
    "gpt2-medium (355M)": {"emb_dim": 1024, "n_layers": 24, "n_heads": 16},
    "gpt2-large (774M)": {"emb_dim": 1280, "n_layers": 36, "n_heads": 20},
    "gpt2-xl (1558M)": {"emb_dim": 1600, "n_layers": 48, "n_heads": 25},
}


BASE_CONFIG = {"vocab_size": 50257, "context_length": 1024, "drop_rate": 0.0, "qkv_bias": True}


SIZES = {"mini": {"emb_dim": 192, "n_layers": 4, "n_heads": 6}} | {name.split("(")[1][:-1]: sizes for name, sizes in MODEL_CONFIGS.items()}


def generate(model, idx, max_new_tokens, context_size, temperature=0.0, top_k=None, eos_id=None):
    """逐个生成词元，可以调温度、限制 top-k，遇到结束符就停。（详解见 ch05/main/gpt_generate.py）"""
    if not temperature >= 0:
        raise ValueError(f"温度不能是负数（{temperature}）：0 表示贪心，越大越随机")
    vocab_size = model.out_head.out_features
    if top_k is not None and not 1 <= top_k <= vocab_size:
        raise ValueError(f"top_k 应在 1 到 {vocab_size}（词表大小）之间，不能是 {top_k}；不想限制就不要给")
    for _ in range(max_new_tokens):
        idx_cond = idx[:, -context_size:]  # (b, t)
        with torch.no_grad():
            logits = model(idx_cond)[:, -1, :]  # (b, V)
        if top_k is not None:
            kth = torch.topk(logits, top_k).values[:, -1:]  # (b, 1)
            logits = torch.where(logits < kth, -torch.inf, logits)  # (b, V)
        if temperature > 0.0:
            logits = logits / temperature
            logits = logits - logits.max(dim=-1, keepdim=True).values
            probs = torch.softmax(logits, dim=-1)  # (b, V)
            idx_next = torch.multinomial(probs, num_samples=1)  # (b, 1)
        else:
            idx_next = torch.argmax(logits, dim=-1, keepdim=True)  # (b, 1)
        if eos_id is not None and (idx_next == eos_id).all():
            break
        idx = torch.cat((idx, idx_next), dim=1)  # (b, t + 1)
    return idx


def assign(left, right):
    """把一个数组变成模型的参数；形状不同就报错。（详解见 ch05/main/gpt_generate.py）"""
    if left is None:
        raise ValueError("模型里没有这个偏置：OpenAI 的权重带 Q、K、V 的偏置，建模型时要 qkv_bias=True")
    if left.shape != right.shape:
        raise ValueError(f"形状不同：模型里是 {tuple(left.shape)}，权重是 {tuple(right.shape)}，多半是模型的配置与权重不是一种规模")
    return nn.Parameter(torch.tensor(right, dtype=left.dtype, device=left.device))


def load_weights_into_gpt(gpt, params):
    """把 OpenAI 的权重装进我们的 GPTModel：同样的零件，两边起的名字和摆法不同，逐个对上。（详解见 ch05/main/gpt_generate.py）"""
    if len(gpt.trf_blocks) != len(params["blocks"]):
        raise ValueError(f"模型有 {len(gpt.trf_blocks)} 块，权重有 {len(params['blocks'])} 块，不是一种规模")
    gpt.tok_emb.weight = assign(gpt.tok_emb.weight, params["wte"])  # (V, d)
    gpt.pos_emb.weight = assign(gpt.pos_emb.weight, params["wpe"])  # (n_ctx, d)
    for block, block_params in zip(gpt.trf_blocks, params["blocks"]):
        attn, mlp = block_params["attn"], block_params["mlp"]
        weights = np.split(attn["c_attn"]["w"], 3, axis=-1)
        biases = np.split(attn["c_attn"]["b"], 3, axis=-1)
        for linear, w, b in zip((block.att.W_query, block.att.W_key, block.att.W_value), weights, biases):
            linear.weight = assign(linear.weight, w.T)  # (d, d)
            linear.bias = assign(linear.bias, b)  # (d,)
        for linear, part in [(block.att.out_proj, attn["c_proj"]), (block.ff.layers[0], mlp["c_fc"]), (block.ff.layers[2], mlp["c_proj"])]:
            linear.weight = assign(linear.weight, part["w"].T)
            linear.bias = assign(linear.bias, part["b"])
        for norm, part in [(block.norm1, block_params["ln_1"]), (block.norm2, block_params["ln_2"])]:
            norm.scale = assign(norm.scale, part["g"])  # (d,)
            norm.shift = assign(norm.shift, part["b"])  # (d,)
    gpt.final_norm.scale = assign(gpt.final_norm.scale, params["g"])  # (d,)
    gpt.final_norm.shift = assign(gpt.final_norm.shift, params["b"])  # (d,)
    gpt.out_head.weight = assign(gpt.out_head.weight, params["wte"])  # (V, d)


# endregion


# region 沿用 ch05/main/gpt_generate.py: memory_needed, check_memory, read_weights, load_model
def memory_needed(config):
    """估计模型占多少内存：不建模型，用公式数出参数，每个 4 字节。（详解见 ch05/main/gpt_generate.py）"""
    d, n_layers, n_ctx = config["emb_dim"], config["n_layers"], config["context_length"]
    parameters = (2 * config["vocab_size"] + n_ctx) * d + n_layers * (12 * d * d + 13 * d) + 2 * d
    masks = n_layers * n_ctx * n_ctx
    return (4 * parameters + masks) / 2**30


def check_memory(config):
    """建模型之前，看看这台机器装不装得下；不看的话，建到一半会被系统杀掉，什么提示也没有。（详解见 ch05/main/gpt_generate.py）"""
    memory, need = total_memory(), memory_needed(config) + 0.5
    if memory is not None and need > memory:
        fit = [f"--size {size}" for size, sizes in SIZES.items() if memory_needed(BASE_CONFIG | sizes) + 0.5 <= memory]
        raise ValueError(f"这个模型约要 {need:.1f} GB 内存，这台机器只有 {memory:.1f} GB；装得下的有：{'、'.join(fit) or '没有'}")


def read_weights(path):
    """读一个权重文件，先不管它是哪一种。（详解见 ch05/main/gpt_generate.py）"""
    if not path.is_file():
        raise ValueError(f"找不到 {path}；要用自己训练的模型，请先运行 python ch05/main/gpt_train.py")
    try:
        with open(path, "rb") as file:
            is_safetensors = file.read(9)[8:] == b"{"
        if is_safetensors:
            content = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
        saved, state = content.get("config"), content.get("model", content.get("model_state_dict", content))
        masks = ("att.mask", "attn.bias", "attn.masked_bias")
        state = {name.removeprefix("transformer."): tensor for name, tensor in state.items() if not name.endswith(masks)}
        usable = bool(state) and all(tensor.is_floating_point() for tensor in state.values())
    except Exception:
        usable = False
    if not usable:
        raise ValueError(f"{path} 读不出来：文件已损坏，或者不是 GPT 的检查点、权重")
    return saved, state


def load_model(path, size=None):
    """认出文件是哪一种，建好模型，装上权重。（详解见 ch05/main/gpt_generate.py）"""
    path = Path(path)
    saved, state = read_weights(path)
    openai = saved is None and "wte.weight" in state
    kind = "OpenAI 格式的权重" if openai else "状态字典" if saved is None else "检查点"
    tok, pos, norm = ("wte.weight", "wpe.weight", "ln_1.weight") if openai else ("tok_emb.weight", "pos_emb.weight", "norm1.scale")
    layers = sum(name.endswith(norm) for name in state)
    if not {tok, pos} <= state.keys() or state[tok].dim() != 2 or state[pos].dim() != 2 or layers == 0:
        raise ValueError(f"{path} 不是 GPT 的权重（第一项叫 {min(state)}）")
    (vocab_size, width), n_ctx = state[tok].shape, state[pos].shape[0]
    found = next((name for name, sizes in SIZES.items() if (sizes["emb_dim"], sizes["n_layers"]) == (width, layers)), None)
    if size and found != size:
        raise ValueError(f"{path} 是 {found or '别的规模'}（{layers} 层、{width} 维），不是 {size}；去掉 --size，或换一个文件")
    if saved is None:
        if found is None or openai and found == "mini":
            raise ValueError(f"{path} 是 {layers} 层、{width} 维，不是 GPT-2 的四种规模之一，不知道有几个头")
        saved = SIZES[found]
    config = BASE_CONFIG | {"vocab_size": vocab_size, "context_length": n_ctx, "emb_dim": width, "n_layers": layers}
    config["qkv_bias"] = openai or "trf_blocks.0.att.W_query.bias" in state
    try:
        config["n_heads"] = int(saved["n_heads"])
        agreed = vocab_size == 50257 and config["n_heads"] > 0 and all(saved[key] == config[key] for key in saved.keys() & config.keys() - {"drop_rate"})
    except Exception:
        agreed = False
    if not agreed:
        raise ValueError(f"{path} 里写的配置与权重对不上，或词表不是 GPT-2 的（{vocab_size} 个词元）")
    check_memory(config)
    model = GPTModel(config)
    if openai:
        load_weights_into_gpt(model, load_gpt2_params_from_safetensors(path, GPT2_SETTINGS[found]))
        return model, config, kind
    try:
        model.load_state_dict(state | dict(model.named_buffers()))
    except RuntimeError:
        raise ValueError(f"{path} 里的权重与 {layers} 层、{width} 维的 GPTModel 对不上：名字或形状不同") from None
    return model, config, kind


# endregion


# region 沿用 ch05/main/gpt_train.py: text_to_token_ids, token_ids_to_text
def text_to_token_ids(text, tokenizer):
    """文本 → 模型的输入。（详解见 ch05/main/gpt_train.py）"""
    encoded = tokenizer.encode(text, allowed_special={"<|endoftext|>"})
    return torch.tensor(encoded).unsqueeze(0)  # (1, t)


def token_ids_to_text(token_ids, tokenizer):
    """模型的输出 → 文本。（详解见 ch05/main/gpt_train.py）"""
    return tokenizer.decode(token_ids.squeeze(0).tolist())


# endregion


def make_random_file(settings, path):
    """造一份权重文件：名字和形状与 OpenAI 的相同，数是随机的。

    参数:
        settings (dict): 模型的大小
        path (Path): 存到哪里
    """
    torch.manual_seed(123)
    save_file({name: 0.02 * torch.randn(shape) for name, shape in gpt2_shapes(settings).items()}, path)


def let_it_write(path, size, new_tokens):
    """装上一种规模的权重，让它写：这就是练习的答案，换规模时这里一行不改。

    参数:
        path (Path): 权重文件
        size (str): 规模
        new_tokens (int): 写几个词元

    返回:
        tuple[GPTModel, str, float]: 模型、写的文本、每个词元几秒
    """
    model, config, _ = load_model(path, size)
    model.eval()
    tokenizer = tiktoken.get_encoding("gpt2")
    idx = text_to_token_ids("Every effort moves you", tokenizer)  # (1, t)
    start = time.perf_counter()
    torch.manual_seed(123)
    out = generate(model, idx, new_tokens, config["context_length"], temperature=1.5, top_k=50)  # (1, t + new_tokens)
    return model, token_ids_to_text(out, tokenizer), (time.perf_counter() - start) / new_tokens


# region 沿用 setup/find_data.py: find_data
def find_data(*names):
    """到几个数据文件夹里依次找，返回找到的第一个；都没有，就说先运行哪条命令，退出码 2。（详解见 setup/find_data.py）"""
    here = Path(__file__ if "__file__" in globals() else "x").resolve()
    root = next((folder for folder in here.parents if (folder / "setup" / "data").is_dir()), Path())
    for folder in [os.environ.get("LLM_DATA_DIR"), root / "setup" / "downloads", root / "setup" / "data", root / "ch05" / "outputs"]:
        for name in names:
            if folder and (Path(folder) / name).exists():
                return Path(folder) / name
    commands = {"tiktoken": "setup/prepare.py", "gpt_mini.pth": "ch05/main/gpt_train.py（约 90 秒）", "gpt2-124M.pth": "ch05/main/gpt_download.py"}
    print(f"找不到 {names[0]}，请先运行 python {commands.get(names[0], 'setup/download.py')}", file=sys.stderr)
    sys.exit(2)


# endregion

os.environ["TIKTOKEN_CACHE_DIR"] = str(find_data("tiktoken"))  # GPT-2 的词表由 setup/run.sh 放好，不联网


# region 沿用 setup/device_check.py: total_memory
def total_memory():
    """这台机器的内存。（详解见 setup/device_check.py）"""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):
        return None


# endregion


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def main():
    """算一张表，用同一套代码装两种规模，有真的就让它写。"""
    parser = argparse.ArgumentParser(description="练习 5.6　换成别的规模")
    parser.add_argument("--size", choices=GPT2_SETTINGS, help="让哪种规模写（默认：1558M，没有下载就不写）")
    parser.add_argument("--quick", action="store_true", help="只写 4 个词元")
    args = parser.parse_args()
    size = args.size or "1558M"
    try:
        weights = find_gpt2_file(size)
    except FileNotFoundError as error:
        if args.size:  # 点名要的没有，就不往下走
            parser.error(str(error))
        weights = None

    print("① 四种规模　　　层数　　宽度　　头数　　参数（文件里）　文件　　　装进 GPTModel")
    counted = {}
    for name, settings in GPT2_SETTINGS.items():
        counted[name] = sum(math.prod(shape) for shape in gpt2_shapes(settings).values())
        need = memory_needed(BASE_CONFIG | SIZES[name])
        shape = f"{settings['n_layer']:8}{settings['n_embd']:9}{settings['n_head']:8}"
        print(f"  {name:<8}{shape}{counted[name]:18,}{counted[name] * 4 / 2**30:9.1f} GB{need:11.1f} GB")
    memory = total_memory()
    if memory:
        print(f"  这台机器有 {memory:.1f} GB 内存")

    print("\n② 同一套代码，两种假装的规模（权重随机，只为看清改了哪里）")
    pretend = {
        "小": {"n_vocab": 50257, "n_ctx": 64, "n_embd": 32, "n_head": 2, "n_layer": 2},
        "大": {"n_vocab": 50257, "n_ctx": 64, "n_embd": 64, "n_head": 4, "n_layer": 4},
    }
    models, refusal = {}, ""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Windows 上文件还被映射着，删不掉就算了
        for name, settings in pretend.items():
            # 多一种规模，就是这两张表里各多一行：读文件用的设置，建模型用的配置。
            GPT2_SETTINGS[name] = settings
            SIZES[name] = {"emb_dim": settings["n_embd"], "n_layers": settings["n_layer"], "n_heads": settings["n_head"]}
            path = Path(folder) / f"gpt2-{name}.safetensors"
            make_random_file(settings, path)
            models[name], text, _ = let_it_write(path, name, 4)
            print(f"  {name}　{sum(p.numel() for p in models[name].parameters()):,} 个参数　{text!r}")
        try:
            load_model(Path(folder) / "gpt2-大.safetensors", "小")
        except ValueError as error:
            refusal = str(error).replace(folder + os.sep, "")
        print(f"  把大的当成小的：{refusal}")
        for name in pretend:
            del GPT2_SETTINGS[name], SIZES[name]

    print(f"\n③ 让 {size} 写")
    text = ""
    if weights is None:
        print(f"  没有下载它（python setup/download.py gpt2-1558M，约 6.4 GB）；原书的 1558M 写的是 {BOOK['1558M']!r}")
    else:
        try:
            _, text, seconds = let_it_write(weights, size, 4 if args.quick else 25)
        except ValueError as error:  # 内存不够，或文件不对
            parser.error(str(error))
        print(f"  {weights}\n  {text!r}\n  每个词元 {seconds:.1f} 秒")

    print("\n这个数字对吗？")
    confirm("四种规模的参数个数，与公开的逐个相同", counted == PUBLISHED, "gpt2_shapes 里漏了哪一项，或多算了输出层")
    confirm("1558M 的参数是 124M 的 12.5 倍", round(counted["1558M"] / counted["124M"], 1) == 12.5, "宽度或层数抄错了")
    confirm("换规模不改代码，两个模型的输出层都等于自己的词嵌入", all(torch.equal(m.out_head.weight, m.tok_emb.weight) for m in models.values()), "权重没有装进去")
    confirm("规模写错了会被拒绝，不会装进去再说胡话", "不是 小" in refusal, "load_model 没有核对层数和宽度")
    if size == "124M" and text and not args.quick and weights.stat().st_size == 548_105_171:  # 只有 OpenAI 的 124M 才核对
        confirm("124M 写的与原书 5.5 节一字不差", text == BOOK["124M"], "某个权重装错了地方，或忘了转置")
    elif size in BOOK and text and not args.quick:
        print(f"  原书用 OpenAI 的 {size} 写的是 {BOOK[size]!r}")


if __name__ == "__main__":
    main()
