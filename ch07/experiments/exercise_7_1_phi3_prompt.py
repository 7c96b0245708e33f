"""第 7 章 · 练习 7.1　换一种提示词格式

题目：　把 Alpaca 格式换成 Phi-3 格式（`<|user|>` 和 `<|assistant|>:`），再微调一次。更快吗？答得更好吗？
先想：　Alpaca 格式每条都以同一段 18 个词元的开场白起头。模型要学的是回答，这段开场白帮上忙了吗？它花了多少时间？
解法：　只换两样东西：拼提示词的函数、回答前面的标题。其余不变，并排比：① 每条几个词元；② 每轮几秒；③ 没见过的题答对多少。
动手改：把 format_input_phi 里的 `<|user|>` 改成 `Q:`（2 个词元），每条又能短几个？答得对不对，与记号长什么样无关。

运行：
    python ch07/experiments/exercise_7_1_phi3_prompt.py
    python ch07/experiments/exercise_7_1_phi3_prompt.py --size 355M     # 书上的那次：先 python setup/download.py gpt2-355M instruction-data
    mini 约 4 分钟，1.0 GB（2 核 CPU）；--quick 约 7 秒；没有 ch05 训练的 mini 时，另加一两分钟先训练它
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
import warnings
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import tiktoken
import torch
import torch.nn as nn
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

URL = "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/ch07/01_main-chapter-code/instruction-data.json"
WEIGHT_DECAY, EVAL_ITER = 0.1, 5
SETTINGS = {
    # GPT-2 用书上的设置：学习率不变，两轮，提示词也算损失。
    "default": {"learning_rate": 5e-5, "num_epochs": 2, "mask": False, "warmup": 0, "max_new_tokens": 64},
    # mini 要从头学这批题：步子大，轮数多，先用 50 步预热，再线性降到 0。只算回答的损失，因为 mini 八成的计算
    # 花在 50257 路的输出层上，不算损失的位置就不必算它，快四五倍；这样做对不对，正是练习 7.2 的问题。
    "mini": {"learning_rate": 1.5e-3, "num_epochs": 8, "mask": True, "warmup": 50, "max_new_tokens": 24},
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


# region 沿用 ch05/main/gpt_generate.py: MODEL_CONFIGS, BASE_CONFIG, SIZES, assign, load_weights_into_gpt, memory_needed, check_memory, read_weights, load_model
MODEL_CONFIGS = {
    "gpt2-small (124M)": {"emb_dim": 768, "n_layers": 12, "n_heads": 12},
    "gpt2-medium (355M)": {"emb_dim": 1024, "n_layers": 24, "n_heads": 16},
    "gpt2-large (774M)": {"emb_dim": 1280, "n_layers": 36, "n_heads": 20},
    "gpt2-xl (1558M)": {"emb_dim": 1600, "n_layers": 48, "n_heads": 25},
}


BASE_CONFIG = {"vocab_size": 50257, "context_length": 1024, "drop_rate": 0.0, "qkv_bias": True}


SIZES = {"mini": {"emb_dim": 192, "n_layers": 4, "n_heads": 6}} | {name.split("(")[1][:-1]: sizes for name, sizes in MODEL_CONFIGS.items()}


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


# region 沿用 ch05/main/gpt_download.py: GPT2_SETTINGS, find_gpt2_file, gpt2_shapes, load_gpt2_params_from_safetensors
GPT2_SETTINGS = {
    "124M": {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12},
    "355M": {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 1024, "n_head": 16, "n_layer": 24},
    "774M": {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 1280, "n_head": 20, "n_layer": 36},
    "1558M": {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 1600, "n_head": 25, "n_layer": 48},
}


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


# region 沿用 ch05/main/gpt_train.py: calc_loss_loader, evaluate_model
def calc_loss_loader(data_loader, model, device, num_batches=None):
    """一个数据集的平均损失。（详解见 ch05/main/gpt_train.py）"""
    losses = [calc_loss_batch(inputs, targets, model, device).item() for inputs, targets in islice(data_loader, num_batches)]
    return sum(losses) / len(losses) if losses else float("nan")


def evaluate_model(model, train_loader, val_loader, device, eval_iter):
    """在训练集和验证集上各看几批，估计损失。（详解见 ch05/main/gpt_train.py）"""
    model.eval()
    with torch.no_grad():
        train_loss = calc_loss_loader(train_loader, model, device, num_batches=eval_iter)
        val_loss = calc_loss_loader(val_loader, model, device, num_batches=eval_iter)
    model.train()
    return train_loss, val_loss


# endregion


def logits_at(model, in_idx, keep):
    """与 model(in_idx)[keep] 相同，但只对要的位置算输出层。

    注意力要看全部位置；输出层却是逐个位置算的，不要的位置在它前面就可以扔掉。

    参数:
        model (GPTModel): 语言模型
        in_idx (Tensor): 词元编号，(b, t)
        keep (Tensor 或 tuple): 要哪些位置，写法与张量的下标相同

    返回:
        Tensor: 留下的 n 个位置的 logits，(n, V)
    """
    x = model.tok_emb(in_idx) + model.pos_emb(torch.arange(in_idx.shape[1], device=in_idx.device))  # (b, t, d)
    x = model.final_norm(model.trf_blocks(model.drop_emb(x)))  # (b, t, d)
    return model.out_head(x[keep])  # (n, V)


def calc_loss_batch(input_batch, target_batch, model, device):
    """一批的平均损失，与第 5 章的相同；目标是 -100 的位置反正不算，这里连分数也不算，省下大半时间。

    参数:
        input_batch (Tensor): 词元编号，(b, t)
        target_batch (Tensor): 目标，(b, t)
        model (nn.Module): 语言模型
        device (torch.device): 在哪里算

    返回:
        Tensor: 损失，只有一个数，是 n 个留下的位置的平均
    """
    input_batch, target_batch = input_batch.to(device), target_batch.to(device)
    keep = target_batch != -100  # (b, t)
    return nn.functional.cross_entropy(logits_at(model, input_batch, keep), target_batch[keep])


# region 沿用 ch06/main/gpt_class_finetune.py: choose_start
def choose_start(size, from_file, quick=False):
    """决定从哪份预训练权重开始微调；mini 还没有训练过，就先训练一个。（详解见 ch06/main/gpt_class_finetune.py）"""
    if from_file:
        return Path(from_file)
    if size is None:
        try:
            return find_gpt2_file("124M")
        except FileNotFoundError:
            size = "mini"
    if size != "mini":
        return find_gpt2_file(size)
    chapter = Path(globals().get("__file__", "notebook.ipynb")).resolve().parents[2] / "ch05"
    path = chapter / "outputs" / "gpt_mini.pth"
    if path.is_file():
        try:
            done = torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)["progress"]["epoch"]
        except Exception:
            done = 15
        if done < 15:
            print(f"注意　{path.name} 只预训练了 {done} 轮（完整的是 15 轮），结果会差一些；补完它：python ch05/main/gpt_train.py --resume")
        return path
    if quick:
        return None
    print("还没有预训练过的 mini，先训练一个：python ch05/main/gpt_train.py（约 90 秒，只要这一次）", flush=True)
    if subprocess.run([sys.executable, str(chapter / "main" / "gpt_train.py")]).returncode != 0:
        raise OSError("mini 没有训练成，原因见上面；可以先单独运行 python ch05/main/gpt_train.py，或用 --from-file 指定别的权重")
    return path


# endregion


# region 沿用 ch07/main/gpt_instruction_finetuning.py: download_and_load_file, format_input, custom_collate_fn, split_data, normalize
def download_and_load_file(file_path, url, keys=("instruction", "input", "output")):
    """读指令数据。名字与原书的相同，但它不自己上网：没有文件，就告诉你怎么下载。（详解见 ch07/main/gpt_instruction_finetuning.py）"""
    if not os.path.isfile(file_path):
        raise FileNotFoundError(f"找不到 {file_path}，请先下载：python setup/download.py instruction-data（也可以用浏览器打开 {url}）")
    try:
        data = json.loads(read_text(file_path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file_path} 不是完整的 JSON：第 {error.lineno} 行第 {error.colno} 列读不懂，多半是少了逗号、引号，或文件没有下载完") from None
    except RecursionError:
        raise ValueError(f"{file_path} 里的括号套得太深，不是指令数据") from None
    if not isinstance(data, list) or not data:
        raise ValueError(f"{file_path} 里应是一个列表 [{{…}}, {{…}}]，至少一条，现在是{'空的列表' if data == [] else type(data).__name__}")
    for number, entry in enumerate(data, start=1):
        if not isinstance(entry, dict):
            raise ValueError(f"{file_path} 的第 {number} 条应是 {{…}}，现在是 {type(entry).__name__}")
        for key in keys:
            if not isinstance(entry.get(key), str):
                raise ValueError(f"{file_path} 的第 {number} 条" + (f"的 {key} 不是文字" if key in entry else f"少了 {key}"))
            if "<|endoftext|>" in entry[key]:
                raise ValueError(f"{file_path} 的第 {number} 条的 {key} 里有 <|endoftext|>，请去掉")
        if not entry["instruction"].strip():
            raise ValueError(f"{file_path} 的第 {number} 条的 instruction 是空的")
    return data


def format_input(entry):
    """一条数据 → Alpaca 格式的提示词，到回答之前为止。（详解见 ch07/main/gpt_instruction_finetuning.py）"""
    instruction_text = (
        f"Below is an instruction that describes a task. "
        f"Write a response that appropriately completes the request."
        f"\n\n### Instruction:\n{entry['instruction']}"
    )
    input_text = f"\n\n### Input:\n{entry['input']}" if entry["input"] else ""
    return instruction_text + input_text


def custom_collate_fn(batch, pad_token_id=50256, ignore_index=-100, allowed_max_length=None, device="cpu"):
    """把长短不一的几条凑成一批，同时做好目标。怎样一步步写成这样，见 example_02_collate.py。（详解见 ch07/main/gpt_instruction_finetuning.py）"""
    batch_max_length = max(len(item) + 1 for item in batch)
    inputs_lst, targets_lst = [], []
    for item in batch:
        new_item = item.copy()
        new_item += [pad_token_id]
        padded = new_item + [pad_token_id] * (batch_max_length - len(new_item))
        inputs = torch.tensor(padded[:-1])  # (t,)
        targets = torch.tensor(padded[1:])  # (t,)
        indices = torch.nonzero(targets == pad_token_id).squeeze()  # (n,) 或 ()
        if indices.numel() > 1:
            targets[indices[1:]] = ignore_index
        if allowed_max_length is not None:
            inputs = inputs[:allowed_max_length]
            targets = targets[:allowed_max_length]
        inputs_lst.append(inputs)
        targets_lst.append(targets)
    return torch.stack(inputs_lst).to(device), torch.stack(targets_lst).to(device)  # (b, t)，(b, t)


def split_data(data):
    """按文件里的次序切成训练、测试、验证三份：85%、10%、5%。不打乱，所以数据在文件里就应当是乱序的。（详解见 ch07/main/gpt_instruction_finetuning.py）"""
    train_portion = int(len(data) * 0.85)
    test_portion = int(len(data) * 0.1)
    train_data = data[:train_portion]
    test_data = data[train_portion : train_portion + test_portion]
    val_data = data[train_portion + test_portion :]
    return train_data, val_data, test_data


def normalize(text):
    """比较之前抹平无关紧要的差别：大小写、标点、空白。（详解见 ch07/main/gpt_instruction_finetuning.py）"""
    return " ".join(re.sub(r"[^\w\s-]", " ", text.lower()).split())


# endregion


def format_input_phi(entry):
    """一条数据 → Phi-3 格式的提示词，到回答之前为止。

    参数:
        entry (dict): 有 instruction 和 input；input 为空时，整段省略

    返回:
        str: 提示词

    出处: 原书练习 7.1；格式来自 Phi-3 Technical Report，2024
    """
    instruction_text = f"<|user|>\n{entry['instruction']}"
    input_text = f"\n{entry['input']}" if entry["input"] else ""
    return instruction_text + input_text


# 一种格式 = 拼提示词的函数 + 回答前面的标题。训练和提问必须用同一种。
STYLES = {"alpaca": (format_input, "\n\n### Response:\n"), "phi3": (format_input_phi, "\n<|assistant|>:\n")}


class PromptDataset(Dataset):
    """InstructionDataset，但可以选提示词的格式，并且记下提示词有多长（遮住提示词时要用）。

    参数:
        data (list[dict]): 指令数据
        tokenizer: 分词器
        style (str): STYLES 里的一种格式
        with_title (bool): 回答前面的标题算不算提示词；书上不算，标题也要模型学着写
    """

    def __init__(self, data, tokenizer, style="alpaca", with_title=False):
        self.instruction_lengths, self.encoded_texts = [], []
        format_function, title = STYLES[style]
        for entry in data:
            instruction_plus_input = format_function(entry)
            self.encoded_texts.append(tokenizer.encode(instruction_plus_input + title + entry["output"]))
            self.instruction_lengths.append(len(tokenizer.encode(instruction_plus_input + title * with_title)))

    def __getitem__(self, index):
        """取一条。

        参数:
            index (int): 第几条

        返回:
            tuple[int, list[int]]: 提示词的长度，整条的词元编号
        """
        return self.instruction_lengths[index], self.encoded_texts[index]

    def __len__(self):
        """一共几条。

        返回:
            int: 条数
        """
        return len(self.encoded_texts)


def collate_batch(batch, mask, device):
    """凑成一批；要遮的话，把提示词的目标换成 -100（为什么减 1，见练习 7.2）。

    参数:
        batch (list[tuple]): 每条是（提示词的长度，词元编号）
        mask (bool): 遮不遮提示词
        device (torch.device): 放到哪个设备上

    返回:
        tuple[Tensor, Tensor]: 输入和目标，都是 (b, t)
    """
    inputs, targets = custom_collate_fn([item for _, item in batch])
    if mask:
        for row, (instruction_length, _) in enumerate(batch):
            targets[row, : instruction_length - 1] = -100
    return inputs.to(device), targets.to(device)


def prepare(args, *names):
    """备齐几次微调共用的东西：设备、数据、分词器、起点的权重、设置，并印出用了哪一份。

    参数:
        args (argparse.Namespace): 命令行参数，见 exercise_parser
        *names (str): 没有 --data 时，先按这些名字找数据

    返回:
        SimpleNamespace: 上面说的几样；train_data 训练，val_data 验证，held_out 没见过的题（测试 + 验证）

    异常:
        ValueError: 参数、数据或权重有问题
        OSError: 找不到文件
    """
    if args.epochs is not None and args.epochs < 1:
        raise ValueError(f"--epochs 至少是 1，不能是 {args.epochs}")
    if not 0 <= args.seed < 2**63:
        raise ValueError(f"--seed 应在 0 到 2⁶³ − 1 之间，不能是 {args.seed}")
    device, tokenizer = pick_device(args.device), tiktoken.get_encoding("gpt2")
    # 原书的题什么都问，mini 一句也答不对，比不出高低；自带的数据词不多，有标准答案，是为它准备的。
    is_mini = args.size == "mini" and not args.from_file
    path = args.data or find_data(*names, *(["instructions.json"] if is_mini else ["instruction-data.json", "instructions.json"]))
    data = download_and_load_file(path, URL)
    start = choose_start(args.size, args.from_file, args.quick)
    if start:
        model, config, _ = load_model(start, None if args.from_file else args.size)
    else:
        config = BASE_CONFIG | SIZES["mini"] | {"context_length": 256, "qkv_bias": False}
        torch.manual_seed(args.seed)
        model = GPTModel(config)
    # 装不进上下文的条目，截掉的正好是回答，学不到东西，还不如不要。
    lengths = [len(text) for _, text in PromptDataset(data, tokenizer)]
    fit = [entry for entry, length in zip(data, lengths) if length <= min(config["context_length"], 512)]
    train_data, val_data, test_data = split_data(fit)
    if len(train_data) < args.batch_size or not val_data or not test_data:
        raise ValueError(f"{path} 太少：只有 {len(fit)} 条能用，切开之后凑不出一批（{args.batch_size} 条）训练数据，至少要 20 条")
    if args.quick:
        train_data, val_data, test_data = train_data[:40], val_data[:2], test_data[:4]
    settings = SETTINGS["mini" if config["emb_dim"] < 768 else "default"]
    left_out = f"，{len(data) - len(fit)} 条太长没有用" if len(fit) < len(data) else ""
    print(f"数据　{path}（{len(data):,} 条{left_out}；训练 {len(train_data):,}，没见过的题 {len(test_data) + len(val_data):,}）")
    print(f"权重　{start or '随机的，没有预训练'}（{config['n_layers']} 层，{config['emb_dim']} 维）")
    epochs = args.epochs or (1 if args.quick else settings["num_epochs"])
    return SimpleNamespace(
        device=device, tokenizer=tokenizer, data=data, train_data=train_data, val_data=val_data, held_out=test_data + val_data, config=config,
        state=model.state_dict(), settings=settings, epochs=epochs, batch_size=args.batch_size, seed=args.seed, quick=args.quick,
    )


def answer(model, common, entry, style="alpaca"):
    """让模型回答一条：贪心解码，写到结束词元为止。

    参数:
        model (nn.Module): 语言模型
        common (SimpleNamespace): prepare 的结果
        entry (dict): 有 instruction 和 input
        style (str): STYLES 里的一种格式

    返回:
        str: 回答
    """
    format_function, title = STYLES[style]
    prompt = common.tokenizer.encode(format_function(entry) + title)
    idx = torch.tensor([prompt], device=common.device)  # (1, t)
    for _ in range(6 if common.quick else common.settings["max_new_tokens"]):
        with torch.no_grad():
            logits = logits_at(model, idx[:, -common.config["context_length"] :], (slice(None), -1))  # (1, V)　只要最后一个位置
        idx_next = logits.argmax(dim=-1, keepdim=True)  # (1, 1)
        if idx_next.item() == 50256:
            break
        idx = torch.cat((idx, idx_next), dim=1)  # (1, t + 1)
    return common.tokenizer.decode(idx[0, len(prompt) :].tolist()).strip()


def finetune(common, title, style="alpaca", collate=None, with_title=True, train_data=None, steps=None, wrap=None):
    """从同一份权重、同一个种子开始，微调一次，再考没见过的题。每个练习只改后面几个参数中的一个，结果的差别就只来自它。

    参数:
        common (SimpleNamespace): prepare 的结果
        title (str): 这一次叫什么，印在结果前面
        style (str): 提示词的格式
        collate (callable 或 None): 怎样凑成一批；None 表示 collate_batch，遮不遮提示词按这种规模的默认
        with_title (bool): 遮提示词时，连不连标题一起遮
        train_data (list 或 None): 用哪些训练数据；None 表示全部
        steps (int 或 None): 训练几步；None 表示由轮数决定
        wrap (callable 或 None): 训练之前改一改模型；None 表示不改

    返回:
        dict: title、model、tokens 每条的词元数、initial 和 final 损失（训练、验证）、seconds 训练秒数、steps 步数、
            batches 每轮几批、accuracy 没见过的题答对的比例、count 参加训练的参数个数
    """
    settings, device = common.settings, common.device
    collate = partial(collate or partial(collate_batch, mask=settings["mask"]), device=device)
    # 连标题也遮，与 gpt_instruction_finetuning.py 的 mini 相同：一句回答平均 7.5 个词元，标题有 6 个，遮住就快三成（练习 7.2）。
    train_set = PromptDataset(train_data or common.train_data, common.tokenizer, style, with_title)
    train_loader = DataLoader(train_set, common.batch_size, shuffle=True, drop_last=True, num_workers=0, collate_fn=collate)
    val_set = PromptDataset(common.val_data, common.tokenizer, style, with_title)
    val_loader = DataLoader(val_set, common.batch_size, num_workers=0, collate_fn=collate)
    torch.manual_seed(common.seed)
    model = GPTModel(common.config)
    model.load_state_dict(common.state)
    if wrap:
        wrap(model)
    model.to(device)
    trainable = [param for param in model.parameters() if param.requires_grad]
    fused = tuple(int(number) for number in torch.__version__.split(".")[:2]) >= (2, 4)  # 旧版 PyTorch 在 CPU 上没有它
    optimizer = torch.optim.AdamW(trainable, lr=settings["learning_rate"], weight_decay=WEIGHT_DECAY, fused=fused)
    steps, warmup = steps or common.epochs * len(train_loader), settings["warmup"]
    # 预热时从小到大，之后线性降到 0；书上的设置没有预热，学习率一直不变。
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / warmup) * (1 - step / steps) if warmup else 1)

    torch.manual_seed(common.seed)
    initial = evaluate_model(model, train_loader, val_loader, device, EVAL_ITER)
    torch.manual_seed(common.seed)
    bar, step = tqdm(total=steps, desc="微调", unit=" 步", mininterval=1, ncols=80), 0
    began = time.monotonic()
    while step < steps:
        for input_batch, target_batch in islice(train_loader, steps - step):
            optimizer.zero_grad()
            loss = calc_loss_batch(input_batch, target_batch, model, device)
            loss.backward()
            optimizer.step()
            scheduler.step()
            step += 1
            bar.update()
    seconds = time.monotonic() - began
    bar.close()
    optimizer.zero_grad()  # 梯度不再要了，放掉能省下一份权重那么大的内存

    final = evaluate_model(model, train_loader, val_loader, device, EVAL_ITER)
    model.eval()
    right = sum(normalize(answer(model, common, entry, style)) == normalize(entry["output"]) for entry in common.held_out)
    return {
        "title": title, "model": model, "tokens": sum(map(len, train_set.encoded_texts)) / len(train_set), "initial": initial, "final": final,
        "seconds": seconds, "steps": steps, "batches": len(train_loader), "accuracy": right / len(common.held_out), "count": sum(map(torch.numel, trainable)),
    }


def print_table(results):
    """并排打印几次微调的结果。

    参数:
        results (list[dict]): finetune 的返回值
    """
    print(f"\n{'':22}每条词元    步数  每步毫秒      训练前的损失      训练后的损失  没见过的题")
    for result in results:
        initial, final = (f"{train:6.3f} /{val:6.3f}" for train, val in (result["initial"], result["final"]))
        speed = 1000 * result["seconds"] / result["steps"]
        pad = " " * (22 - sum(2 if ord(char) > 255 else 1 for char in result["title"]))  # 一个汉字占两格
        print(f"{result['title']}{pad}{result['tokens']:8.1f}{result['steps']:8}{speed:10.0f}    {initial}    {final}    答对 {result['accuracy']:4.0%}")
    print("（损失：训练 / 验证，各看 5 批）")


def exercise_parser(description):
    """这一章几个练习共用的命令行参数。

    参数:
        description (str): 练习是做什么的

    返回:
        ChineseParser: 还可以再加参数
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--size", choices=SIZES, default="mini", help="从哪种规模开始（默认：mini，没有就先训练一个；书上是 355M）")
    parser.add_argument("--from-file", type=Path, help="从这个权重文件开始")
    parser.add_argument("--data", type=Path, help="指令数据，JSON（默认：mini 用自带的 instructions.json，别的规模用找到的原书数据）")
    parser.add_argument("--epochs", type=int, help="每次训练几轮（默认：mini 8；其余 2，与原书相同）")
    parser.add_argument("--device", default="auto", help="auto、mps、cuda 或 cpu（默认：auto）")
    parser.add_argument("--seed", type=int, default=123, help="随机种子（默认：123，与原书相同）")
    parser.add_argument("--quick", action="store_true", help="只用几十条训练 1 轮，看看流程；这时的准确率没有意义")
    parser.set_defaults(batch_size=8)
    return parser


# region 沿用 setup/find_data.py: find_data, read_text
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


def read_text(path):
    """读一个文本文件；不是能用来训练的文本时，用一句中文说清楚。（详解见 setup/find_data.py）"""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise ValueError(f"读不了 {path}：文件不存在，或不是 UTF-8 编码的文本（请用编辑器另存为 UTF-8）") from None
    if "\0" in text or not text.strip():
        raise ValueError(f"{path} 是空的，或是二进制文件，请换一个文本文件")
    return text


# endregion

os.environ["TIKTOKEN_CACHE_DIR"] = str(find_data("tiktoken"))  # GPT-2 的词表由 setup/run.sh 放好，不联网


# region 沿用 setup/device_check.py: pick_device, total_memory
def pick_device(name="auto"):
    """选择计算设备；点名要的设备不存在就报错，绝不悄悄换成 CPU。（详解见 setup/device_check.py）"""
    available = {"mps": torch.backends.mps.is_available(), "cuda": torch.cuda.is_available(), "cpu": True}
    name = next(device for device, found in available.items() if found) if name == "auto" else name
    if not available.get(name):
        raise ValueError(f"这台机器上没有设备 {name}；运行 python setup/device_check.py 看有哪些、为什么")
    return torch.device(name)


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
    """两种格式各微调一次，并排比。"""
    parser = exercise_parser("练习 7.1　把提示词从 Alpaca 格式换成 Phi-3 格式")
    args = parser.parse_args()
    try:
        common = prepare(args)
        entry = next((entry for entry in common.train_data if entry["input"]), common.train_data[0])
        for name, (format_function, title) in STYLES.items():
            text = format_function(entry) + title + entry["output"]
            print(f"\n—— {name} 格式，{len(common.tokenizer.encode(text))} 个词元 ——\n{text}")
        # `<|user|>` 不在 GPT-2 的词表里，会拆成 5 个；真正的 Phi-3 把它加进了自己的词表，只占 1 个。
        user_ids = common.tokenizer.encode("<|user|>")
        print(f"\n<|user|> 的词元编号　{user_ids}\n")
        alpaca = finetune(common, "Alpaca 格式", style="alpaca")
        phi3 = finetune(common, "Phi-3 格式", style="phi3")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print_table([alpaca, phi3])
    for result in (alpaca, phi3):
        result["epoch"] = result["seconds"] / result["steps"] * result["batches"]
    print(f"每轮　Alpaca {alpaca['epoch']:.1f} 秒，Phi-3 {phi3['epoch']:.1f} 秒；每条的词元少了 {1 - phi3['tokens'] / alpaca['tokens']:.0%}")

    print("\n学到什么")
    print("　　开场白每条都一样，不带信息，只占词元。格式只要训练和提问时一致，短的就是省下来的时间。")
    print("　　书上（355M，2 轮，L4 显卡）：Alpaca 1.80 分钟，Phi-3 1.50 分钟，快 17%；Phi-3 的损失从 3.716 / 3.644 降到 0.424 / 0.928，")
    print("　　裁判打的分 48.87，与 Alpaca 的 49.45 分不出高下（换一次运行就能差上 3 分）。")
    print("　　两种格式的损失不能直接比：连提示词也算损失时，背熟开场白就能让平均损失好看。要比，就比答对多少。")

    print("\n这个数字对吗？")
    confirm("<|user|> 拆成 5 个词元：27, 91, 7220, 91, 29", user_ids == [27, 91, 7220, 91, 29], "分词器不是 GPT-2 的")
    confirm(f"Phi-3 格式短：每条 {phi3['tokens']:.1f} 个词元，Alpaca {alpaca['tokens']:.1f} 个", phi3["tokens"] < alpaca["tokens"], "STYLES 里的函数配错了")
    confirm("两次的步数、参数一样多：只有格式不同", (alpaca["steps"], alpaca["count"]) == (phi3["steps"], phi3["count"]), "两次用的数据不同")


if __name__ == "__main__":
    main()
