"""第 6 章 · 6.2–6.8 节　分类微调：把会接话的 GPT 改成垃圾短信分类器

读完、敲完这个脚本，你应该能不看书回答：
    1. 换掉输出层之后，为什么只看最后一个词元的分数？
    2. 5,572 条短信为什么要扔掉四千多条正常的？不扔，准确率会怎样骗人？
    3. 我们关心准确率，训练时优化的为什么是交叉熵？

运行：
    python ch06/main/gpt_class_finetune.py                          # 微调，画损失和准确率
    python ch06/main/gpt_class_finetune.py --text "Congratulations! You have won a new phone. Call 08081 570211"    # 用微调好的模型判断一条
    python ch06/main/gpt_class_finetune.py --resume                 # 中断之后接着训练，结果与没断过逐位相同
    python ch06/main/gpt_class_finetune.py --size 124M --device cpu # 书上的那次微调；先下载：python setup/download.py gpt2-124M sms-spam
    mini 约 58 秒，0.7 GB（2 核 CPU）；没有 ch05 训练的 mini 时，另加一两分钟先训练它。124M 约 1.8 GB，书上在 M3 笔记本的 CPU 上用了 5.3 分钟

从哪份权重开始（总会打印出来）：
    --from-file 文件　　就用它
    --size 124M 等　　　下载的 gpt2-规模.safetensors
    都没有写　　　　　　有 124M 的权重就用它，没有就用 ch05/outputs/gpt_mini.pth；连它也没有，就先训练一个

mini 只读过一篇两万字符的小说，训练短信里的词元有一大半它从没见过：换成随机的权重，微调完的准确率也差不多；换一份数据，准确率就掉到八成。
它当得了这一章的练习对象，当不了真正的分类器，数字见 ch06/README.md 的学习笔记。

形状记号（全书统一）：
    b 批大小　　t 序列长度（token 数）　　d 嵌入维度　　h 头数　　k 每个头的维度（k = d / h）　　V 词表大小　　n 样本数
"""

import argparse
import csv
import hashlib
import io
import os
import re
import subprocess
import sys
import time
import warnings
from itertools import islice
from pathlib import Path

import numpy as np
import tiktoken
import torch
import torch.nn as nn
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
LABELS = {"ham": 0, "spam": 1}  # 交叉熵要的是类别的编号
BATCH_SIZE = 8
WEIGHT_DECAY = 0.1
EVAL_FREQ, EVAL_ITER = 50, 5  # 每 50 步评估一次，每次各看 5 批，与原书相同
BOOK_LOSSES = [  # 原书 6.7 节：第 0、50、……、600 步的训练损失和验证损失（124M，原书的数据）
    (2.153, 2.392), (0.617, 0.637), (0.523, 0.557), (0.561, 0.489), (0.419, 0.397), (0.409, 0.353), (0.333, 0.320),
    (0.340, 0.306), (0.136, 0.200), (0.153, 0.132), (0.222, 0.137), (0.207, 0.143), (0.083, 0.074),
]  # fmt: skip
EXAMPLES = [  # 原书 6.8 节判断的两条
    "You are a winner you have been specially selected to receive $1000 cash or a $2000 award.",
    "Hey, just wanted to check if we're still on for dinner tonight? Let me know!",
]
FINETUNE_SETTINGS = {
    # 书上的设置：预训练已经教会了语言，只要轻轻改动最后一层，所以学习率很小，只训练最后一块。
    "default": {"learning_rate": 5e-5, "num_epochs": 5, "trainable": "last_block"},
    # mini 没学会多少语言，只训练最后一块不够用（README 里有对照）：全部训练，步子也大一些。
    "mini": {"learning_rate": 3e-4, "num_epochs": 5, "trainable": "all"},
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


# region 沿用 ch05/main/gpt_train.py: calc_loss_loader, evaluate_model, get_rng_state, set_rng_state, save_checkpoint
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


def get_rng_state(device):
    """记下随机数发生器此刻的状态：打乱数据用 CPU 的，dropout 用计算设备的。（详解见 ch05/main/gpt_train.py）"""
    state = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state()
    return state


def set_rng_state(state, device):
    """把随机数发生器恢复到 get_rng_state 记下的状态。（详解见 ch05/main/gpt_train.py）"""
    torch.set_rng_state(state["cpu"])
    if device.type in state and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state[device.type])


def save_checkpoint(path, content):
    """存检查点：先写到临时文件，写完整了再改名，所以随时断电也不会留下半个文件。（详解见 ch05/main/gpt_train.py）"""
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        raise OSError(f"检查点写不进 {path}（磁盘满了，或没有写的权限），请腾出空间或用 --out 换个文件夹") from error


# endregion


# region 改写 ch05/main/gpt_train.py: load_checkpoint
def load_checkpoint(path):
    """读微调的检查点。（原版详解见 ch05/main/gpt_train.py）"""
    if not path.is_file():
        raise ValueError(f"找不到 {path}，请先微调一次：python ch06/main/gpt_class_finetune.py")  # 改：微调的检查点由本脚本存
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        raise ValueError(f"{path} 读不出来：文件已损坏，或者不是检查点") from None
    # 改：多记了训练哪些层、填充到多长；数据用摘要认
    if not isinstance(content, dict) or not {"config", "seed", "data", "trainable", "max_length", "model", "optimizer", "progress"} <= content.keys():
        raise ValueError(f"{path} 不是 gpt_class_finetune.py 存的检查点，里面缺了配置、权重、优化器或进度")  # 改：换成本脚本的名字
    return content


# endregion


def choose_start(size, from_file, quick=False):
    """决定从哪份预训练权重开始微调；mini 还没有训练过，就先训练一个。

    参数:
        size (str 或 None): "mini"、"124M" 等；None 表示有 124M 就用 124M，没有就用 mini
        from_file (Path 或 None): 点名要用的文件
        quick (bool): 只看流程：没有现成的 mini 就不等它训练了

    返回:
        Path 或 None: 权重文件；None 表示没有，请从随机的权重开始

    异常:
        FileNotFoundError: 点名要的规模还没有下载
        OSError: mini 没有训练成
    """
    if from_file:
        return Path(from_file)
    if size is None:
        try:
            return find_gpt2_file("124M")
        except FileNotFoundError:
            size = "mini"
    if size != "mini":
        return find_gpt2_file(size)
    chapter = Path(globals().get("__file__", "notebook.ipynb")).resolve().parents[2] / "ch05"  # 笔记本里没有 __file__
    path = chapter / "outputs" / "gpt_mini.pth"
    if path.is_file():
        try:
            done = torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)["progress"]["epoch"]  # mmap：只读要看的这一项
        except Exception:
            done = 15  # 不是完整的检查点：装权重的时候会说清楚
        if done < 15:
            print(f"注意　{path.name} 只预训练了 {done} 轮（完整的是 15 轮），结果会差一些；补完它：python ch05/main/gpt_train.py --resume")
        return path
    if quick:
        return None
    print("还没有预训练过的 mini，先训练一个：python ch05/main/gpt_train.py（约 90 秒，只要这一次）", flush=True)
    if subprocess.run([sys.executable, str(chapter / "main" / "gpt_train.py")]).returncode != 0:
        raise OSError("mini 没有训练成，原因见上面；可以先单独运行 python ch05/main/gpt_train.py，或用 --from-file 指定别的权重")
    return path


def load_messages(path):
    """读短信：每行「标签<制表符>正文」。

    参数:
        path (Path): .tsv 文件，UTF-8 编码

    返回:
        list[tuple[str, str]]: 每条是（标签，正文），标签是 "ham" 或 "spam"

    异常:
        ValueError: 文件读不了，或某一行不对（会说是第几行）

    出处: 原书 6.2 节（那里用 pandas.read_csv）
    """
    # 用 csv 而不是逐行 split：正文以引号开头时，csv（和 pandas）会把到下一个引号为止的内容当作一栏，哪怕中间换了行。
    # 原书的数据因此从 5,574 行变成 5,572 条，为了与书上相同，这里也照办。详见 example_01_data.py。
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter="\t")
    rows, problems, start = [], [], 1
    try:
        for row in reader:
            if len(row) == 2 and row[0] in LABELS and row[1].strip():
                rows.append((row[0], row[1]))
            elif row:  # 空行跳过
                wrong = "没有制表符" if len(row) == 1 else "制表符不止一个" if len(row) > 2 else "正文是空的" if row[0] in LABELS else f"标签 {row[0]!r} 不是 ham 或 spam"
                problems.append(f"第 {start} 行{wrong}")
            start = reader.line_num + 1  # 一条可能占几行，所以先记下它从哪一行开始
    except csv.Error:
        problems.append(f"第 {start} 行的引号没有配对")
    if problems:
        more = f"……共 {len(problems)} 处" if len(problems) > 3 else ""
        raise ValueError(f"{path} 的格式不对：{'；'.join(problems[:3])}{more}。每行应是「ham 或 spam<制表符>正文」")
    return rows


def create_balanced_dataset(rows):
    """让两类一样多：多的那一类随机抽，少的那一类全要。

    参数:
        rows (list[tuple[str, str]]): 全部短信

    返回:
        list[tuple[str, str]]: 平衡之后的短信，正常的在前，垃圾的在后

    异常:
        ValueError: 只有一类，没法训练

    出处: 原书 6.2 节
    """
    ham = [row for row in rows if row[0] == "ham"]
    spam = [row for row in rows if row[0] == "spam"]
    if not ham or not spam:
        raise ValueError(f"数据里只有 {len(ham)} 条 ham、{len(spam)} 条 spam，两类都要有才能学着分辨")
    n = min(len(ham), len(spam))
    # pandas 的 df.sample(n, random_state=123) 就是：打乱全部序号，取前 n 个。用 NumPy 的旧式随机数发生器，抽出来的与书上一条不差。
    shuffled = np.random.RandomState(123).permutation(len(ham))
    return [ham[i] for i in shuffled[:n]] + spam[:n]


def random_split(rows, train_frac, validation_frac):
    """打乱，再切成训练集、验证集、测试集。

    参数:
        rows (list[tuple[str, str]]): 短信，两类还分在前后
        train_frac (float): 训练集占多少
        validation_frac (float): 验证集占多少；剩下的是测试集

    返回:
        tuple[list, list, list]: 训练集、验证集、测试集

    出处: 原书 6.2 节
    """
    rows = [rows[i] for i in np.random.RandomState(123).permutation(len(rows))]  # 不打乱的话，测试集会全是垃圾短信
    train_end = int(len(rows) * train_frac)
    validation_end = train_end + int(len(rows) * validation_frac)
    return rows[:train_end], rows[train_end:validation_end], rows[validation_end:]


class SpamDataset(Dataset):
    """短信的数据集：先分好词，再一律填充到同样长。

    参数:
        rows (list[tuple[str, str]]): 短信；原书这里是 CSV 文件名 csv_file
        tokenizer: 有 encode 方法的分词器
        max_length (int 或 None): 填充到多长，更长的截断；None 表示最长的那条有多长就多长
        pad_token_id (int): 填充词元的编号；GPT-2 没有专门的，借用 50256（<|endoftext|>）

    形状:
        每个样本是 ((t,), ())，t 就是 max_length

    出处: 原书 6.3 节
    """

    def __init__(self, rows, tokenizer, max_length=None, pad_token_id=50256):
        self.labels = [LABELS[label] for label, _ in rows]
        # disallowed_special=()：正文里万一写着 "<|endoftext|>"，当普通的字处理，不要报错。
        self.encoded_texts = [tokenizer.encode(text, disallowed_special=()) for _, text in rows]
        if max_length is None:
            self.max_length = self._longest_encoded_length()
        else:
            self.max_length = max_length
            self.encoded_texts = [encoded_text[: self.max_length] for encoded_text in self.encoded_texts]
        self.encoded_texts = [encoded_text + [pad_token_id] * (self.max_length - len(encoded_text)) for encoded_text in self.encoded_texts]

    def __getitem__(self, index):
        """取一个样本。

        参数:
            index (int): 第几个

        返回:
            tuple[Tensor, Tensor]: 词元编号 (t,) 和标签 ()
        """
        return torch.tensor(self.encoded_texts[index], dtype=torch.long), torch.tensor(self.labels[index], dtype=torch.long)

    def __len__(self):
        """样本数。

        返回:
            int: n
        """
        return len(self.labels)

    def _longest_encoded_length(self):
        """最长的那条有几个词元。

        返回:
            int: 词元数
        """
        return max(len(encoded_text) for encoded_text in self.encoded_texts)


def add_classification_head(model, num_classes=2, trainable="last_block", seed=123):
    """把语言模型改成分类器：换掉输出层，决定哪些层参加训练。

    参数:
        model (GPTModel): 预训练过的模型，会被就地修改
        num_classes (int): 分几类
        trainable (str): "last_block" 只训练最后一块、最后的归一化和输出层；"all" 全部训练
        seed (int): 新输出层的随机种子

    出处: 原书 6.5 节（那里是几行顶层代码，没有写成函数）
    """
    for param in model.parameters():
        param.requires_grad = trainable == "all"  # 冻结的参数不求梯度，也就不会被更新
    torch.manual_seed(seed)
    # 从"下一个词元是 V 个里的哪一个"变成"是哪一类"。新建的层默认就参加训练。
    model.out_head = nn.Linear(model.out_head.in_features, num_classes)
    for part in (model.trf_blocks[-1], model.final_norm):
        for param in part.parameters():
            param.requires_grad = True


def calc_accuracy_loader(data_loader, model, device, num_batches=None):
    """准确率（accuracy）：答对的比例。

    参数:
        data_loader (DataLoader): 每次给出一批短信和标签
        model (nn.Module): 分类器，(b, t) → (b, t, 2)
        device (torch.device): 在哪里算
        num_batches (int 或 None): 只看前几批；None 表示全部

    返回:
        float: 0 到 1；一批都没有时为 nan

    出处: 原书 6.6 节
    """
    model.eval()
    correct_predictions, num_examples = 0, 0
    for input_batch, target_batch in islice(data_loader, num_batches):
        input_batch, target_batch = input_batch.to(device), target_batch.to(device)
        with torch.no_grad():
            logits = model(input_batch)[:, -1, :]  # (b, 2)
        predicted_labels = torch.argmax(logits, dim=-1)  # (b,)　不必先算 softmax：它不改变谁最大
        num_examples += predicted_labels.shape[0]
        correct_predictions += (predicted_labels == target_batch).sum().item()
    return correct_predictions / num_examples if num_examples else float("nan")


def calc_loss_batch(input_batch, target_batch, model, device):
    """一批的损失：一条短信就是一道选择题，只用最后一个位置的分数作答。

    参数:
        input_batch (Tensor): 词元编号，(b, t)
        target_batch (Tensor): 标签，(b,)
        model (nn.Module): 分类器，(b, t) → (b, t, 2)
        device (torch.device): 在哪里算

    返回:
        Tensor: 一个数，带着计算图，可以 backward

    出处: 原书 6.6 节
    """
    input_batch, target_batch = input_batch.to(device), target_batch.to(device)
    # 因果掩码让每个位置只看得见自己和左边，所以只有最后一个位置读完了整条短信。
    logits = model(input_batch)[:, -1, :]  # (b, 2)
    # 准确率不可导：分数动一点点，argmax 多半不变，梯度处处是 0。交叉熵是它可导的替身。
    return nn.functional.cross_entropy(logits, target_batch)


def train_classifier_simple(model, train_loader, val_loader, optimizer, device, num_epochs, eval_freq, eval_iter, progress=None, save=None):
    """微调的训练循环：与预训练的相同，只是数样本不数词元，每轮结束看准确率而不是看它写的话。

    参数:
        model (nn.Module): 分类器
        train_loader (DataLoader): 训练集
        val_loader (DataLoader): 验证集
        optimizer (torch.optim.Optimizer): 优化器
        device (torch.device): 在哪里算
        num_epochs (int): 总共几轮
        eval_freq (int): 每几步评估一次损失
        eval_iter (int): 评估损失、准确率时各看几批
        progress (dict 或 None): 续训时，上次走到了哪里；None 表示从头开始
        save (callable 或 None): 存检查点的函数，参数是 progress；None 表示不存

    返回:
        tuple[list, list, list, list, int]: 训练损失、验证损失（每次评估一个）、训练准确率、验证准确率（每轮一个）、看过的样本数

    出处: 原书 6.7 节；progress、save 和进度条是本项目加的
    """
    if progress is None:
        progress = {"epoch": 0, "batch": 0, "step": -1, "examples_seen": 0, "train_losses": [], "val_losses": [], "train_accs": [], "val_accs": []}
    p = progress
    bar = tqdm(total=num_epochs * len(train_loader), initial=p["step"] + 1, unit=" 步", desc="微调", mininterval=1, ncols=80)

    for epoch in range(p["epoch"], num_epochs):
        model.train()
        now = get_rng_state(device)
        if p["batch"] == 0:
            p["epoch_rng"] = now
        # 续训时，先回到这一轮开头的随机数状态，打乱出同样的次序，再跳过学过的批；与第 5 章相同。
        set_rng_state(p["epoch_rng"], device)
        batches = iter(train_loader)
        if p["batch"] > 0:
            next(islice(batches, p["batch"] - 1, None))
            set_rng_state(now, device)

        for input_batch, target_batch in batches:
            optimizer.zero_grad()
            loss = calc_loss_batch(input_batch, target_batch, model, device)
            loss.backward()
            optimizer.step()
            p["examples_seen"] += input_batch.shape[0]
            p["step"] += 1
            p["batch"] += 1
            bar.update()

            if p["step"] % eval_freq == 0:
                train_loss, val_loss = evaluate_model(model, train_loader, val_loader, device, eval_iter)
                p["train_losses"].append(train_loss)
                p["val_losses"].append(val_loss)
                tqdm.write(f"第 {epoch + 1} 轮　第 {p['step']:3} 步　训练损失 {train_loss:.3f}　验证损失 {val_loss:.3f}")
                if save:
                    save(p)

        train_accuracy = calc_accuracy_loader(train_loader, model, device, num_batches=eval_iter)
        val_accuracy = calc_accuracy_loader(val_loader, model, device, num_batches=eval_iter)
        tqdm.write(f"第 {epoch + 1} 轮结束　训练准确率 {train_accuracy:.2%}　验证准确率 {val_accuracy:.2%}（各看 {eval_iter} 批）")
        p["train_accs"].append(train_accuracy)
        p["val_accs"].append(val_accuracy)
        p["epoch"], p["batch"] = epoch + 1, 0
        if save:
            save(p)
    bar.close()
    return p["train_losses"], p["val_losses"], p["train_accs"], p["val_accs"], p["examples_seen"]


def plot_values(epochs_seen, examples_seen, train_values, val_values, label, path):
    """画训练集和验证集的两条线，下方横轴是轮数，上方横轴是看过的样本数。

    参数:
        epochs_seen (Tensor): 每个点对应的轮数
        examples_seen (Tensor): 每个点对应的样本数
        train_values (list[float]): 训练集的损失或准确率
        val_values (list[float]): 验证集的
        label (str): "loss" 或 "accuracy"
        path (Path): 图片写到哪里

    出处: 原书 6.7 节
    """
    import matplotlib.pyplot as plt  # 导入要半秒，训练完了才用得着
    import zhplot  # noqa: F401　导入它，图上就能写中文

    name = {"loss": "损失", "accuracy": "准确率"}[label]
    marker = "o" if len(train_values) < 20 else None  # 点少时标出来：只有一轮的话，光画线什么也看不见
    figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
    axis.plot(epochs_seen, train_values, marker=marker, label=f"训练集{name}")
    axis.plot(epochs_seen, val_values, marker=marker, linestyle="-.", label=f"验证集{name}")
    axis.set_xlabel("轮（epoch）")
    axis.set_ylabel(name)
    axis.legend()
    top = axis.twiny()  # 第二条横轴，与第一条共用纵轴
    top.plot(examples_seen, train_values, alpha=0)  # 画一条看不见的线，只为让刻度对齐
    top.set_xlabel("看过的样本数")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def classify_review(text, model, tokenizer, device, max_length=None, pad_token_id=50256):
    """判断一条短信是不是垃圾短信。

    参数:
        text (str): 短信
        model (GPTModel): 微调好的分类器
        tokenizer: 有 encode 方法的分词器
        device (torch.device): 在哪里算
        max_length (int 或 None): 填充到多长；应与训练时相同，模型习惯了在那个位置作答。None 表示不填充
        pad_token_id (int): 填充词元的编号

    返回:
        str: "spam" 或 "not spam"

    出处: 原书 6.8 节
    """
    model.eval()
    input_ids = tokenizer.encode(text, disallowed_special=())
    # 位置嵌入的形状是 (n_ctx, d)，模型最多看 shape[0] 个词元。书的第一次印刷写成了 shape[1]，那是嵌入维度：
    # 对 GPT-2 small 是 768，不会报错，只是把 769 到 1024 个词元的短信白白截短了；换成 n_ctx 小于 d 的模型，就会因为太长而报错。
    supported_context_length = model.pos_emb.weight.shape[0]
    max_length = min(max_length or len(input_ids), supported_context_length)
    input_ids = input_ids[:max_length]
    input_ids += [pad_token_id] * (max_length - len(input_ids))
    input_tensor = torch.tensor(input_ids, device=device).unsqueeze(0)  # (1, t)
    with torch.no_grad():
        logits = model(input_tensor)[:, -1, :]  # (1, 2)
    return "spam" if torch.argmax(logits, dim=-1).item() == 1 else "not spam"


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
    """微调一个垃圾短信分类器；给了 --text，就用微调好的判断这一条。"""
    parser = argparse.ArgumentParser(description="6.2–6.8 节　分类微调：垃圾短信分类器")
    parser.add_argument("--size", choices=SIZES, help="从哪种规模开始（默认：有 124M 的权重就用 124M，没有就用 mini）")
    parser.add_argument("--from-file", type=Path, help="从这个权重文件开始：检查点、状态字典或 hub 上的 safetensors")
    parser.add_argument("--random-init", action="store_true", help="不用预训练的权重，从随机的开始：比一比预训练值多少")
    parser.add_argument("--data", type=Path, help="短信文件，每行「标签<制表符>正文」（默认：找到的 SMSSpamCollection.tsv，没有就用自带的 messages.tsv）")
    parser.add_argument("--epochs", type=int, help="总共几轮（默认：5，与原书相同）")
    parser.add_argument("--trainable", choices=["last_block", "all"], help="训练哪些层（默认：mini 全部；其余只训练最后一块，与原书相同）")
    parser.add_argument("--text", help="不训练，用微调好的模型判断这一条短信")
    parser.add_argument("--resume", action="store_true", help="从上次的检查点接着训练")
    parser.add_argument("--device", default="auto", help="auto、mps、cuda 或 cpu（默认：auto）")
    parser.add_argument("--seed", type=int, default=123, help="随机种子：新的输出层、每轮的次序（默认：123，与原书相同）；切分数据总用 123")
    parser.add_argument("--out", type=Path, default=OUTPUTS, help="检查点和图片写到哪个文件夹（默认：ch06/outputs）")
    parser.add_argument("--save-every", type=float, default=30, help="最多隔几秒存一次检查点（默认：30）")
    parser.add_argument("--quick", action="store_true", help="只用少量短信训练 1 轮，看看流程；没有写 --size 就用 mini")
    args = parser.parse_args()
    try:
        classify(args) if args.text is not None else run(args)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("\n停下了。训练到一半的话，加上 --resume 就能接着训练")
        sys.exit(130)


def run(args):
    """按命令行参数微调。

    参数:
        args (argparse.Namespace): 命令行参数，见 main

    异常:
        ValueError: 参数、数据、权重或检查点有问题
        OSError: 文件读写不了
    """
    if args.epochs is not None and args.epochs < 1:
        raise ValueError(f"--epochs 至少是 1，不能是 {args.epochs}")
    if not 0 <= args.seed < 2**63:
        raise ValueError(f"--seed 应在 0 到 2⁶³ − 1 之间，不能是 {args.seed}")
    if args.random_init and args.from_file:
        raise ValueError("--random-init 和 --from-file 只能用一个：一个不要预训练的权重，一个指定用哪一份")
    device = pick_device(args.device)

    # 6.2　数据：平衡，切分
    path = args.data or find_data("SMSSpamCollection.tsv", "messages.tsv")
    rows = load_messages(path)
    balanced = create_balanced_dataset(rows)
    train_rows, val_rows, test_rows = random_split(balanced, train_frac=0.7, validation_frac=0.1)
    print(f"数据　{path}（{len(rows):,} 条；平衡之后 {len(balanced):,} 条：训练 {len(train_rows):,}，验证 {len(val_rows)}，测试 {len(test_rows)}）")
    if len(train_rows) < BATCH_SIZE or not val_rows:
        raise ValueError(f"{path} 太少：平衡之后只有 {len(balanced)} 条，凑不出一批（{BATCH_SIZE} 条）训练数据，每一类至少要 6 条")

    # 6.4　预训练过的模型
    size = args.size or ("mini" if args.quick and not args.from_file else None)
    start = None if args.random_init else choose_start(size, args.from_file, args.quick)
    if start:
        model, config, _ = load_model(start, args.size)
    else:
        config = BASE_CONFIG | SIZES[size or "mini"]
        if size in (None, "mini"):
            config |= {"context_length": 256, "qkv_bias": False}  # 与 gpt_train.py 的 mini 相同
        check_memory(config)
        torch.manual_seed(args.seed)
        model = GPTModel(config)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # 与原书相同：只训练几轮，用不着 dropout
    print(f"权重　{start or '随机的，没有预训练'}（{config['n_layers']} 层，{config['emb_dim']} 维）")

    # 6.3　数据加载器：三个集合都填充到训练集里最长的那条
    longest = config["context_length"]  # 更长的模型放不下，只好截断
    if args.quick:  # 只取前几条，流程一步不少；大模型一步要好几秒，取得更少、更短
        few, longest = (80, longest) if config["emb_dim"] < 768 else (16, 32)
        train_rows, val_rows, test_rows = train_rows[:few], val_rows[: few // 2], test_rows[: few // 2]
    tokenizer = tiktoken.get_encoding("gpt2")
    train_dataset = SpamDataset(train_rows, tokenizer)
    if train_dataset.max_length > longest:
        train_dataset = SpamDataset(train_rows, tokenizer, max_length=longest)
    max_length = train_dataset.max_length
    val_dataset = SpamDataset(val_rows, tokenizer, max_length=max_length)
    test_dataset = SpamDataset(test_rows, tokenizer, max_length=max_length)
    torch.manual_seed(args.seed)
    train_loader = DataLoader(train_dataset, batch_size=BATCH_SIZE, shuffle=True, num_workers=0, drop_last=True)
    val_loader = DataLoader(val_dataset, batch_size=BATCH_SIZE, num_workers=0, drop_last=False)
    test_loader = DataLoader(test_dataset, batch_size=BATCH_SIZE, num_workers=0, drop_last=False)
    print(f"批　　训练 {len(train_loader)}，验证 {len(val_loader)}，测试 {len(test_loader)}；每批 ({BATCH_SIZE}, {max_length})　(b, t)")

    # 6.5　换输出层，决定训练哪些层
    settings = FINETUNE_SETTINGS["mini" if config["emb_dim"] < 768 else "default"]
    num_epochs = args.epochs or (1 if args.quick else settings["num_epochs"])
    trainable = args.trainable or settings["trainable"]
    add_classification_head(model, num_classes=2, trainable=trainable, seed=args.seed)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    need = memory_needed(config) + 12 * count / 2**30  # 参加训练的参数，每个另要一份梯度、两份动量，各 4 字节
    if total_memory() and need > total_memory():
        raise ValueError(f"训练 {count:,} 个参数约要 {need:.1f} GB 内存，这台机器只有 {total_memory():.1f} GB；请用 --trainable last_block，或小一点的 --size")
    model.to(device)
    print(f"训练　{sum(p.numel() for p in model.parameters()):,} 个参数里的 {count:,} 个（--trainable {trainable}），在 {device} 上训练 {num_epochs} 轮")

    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError:
        raise OSError(f"建不了文件夹 {args.out}：那里有个同名的文件，或没有写的权限；请用 --out 换个地方") from None
    checkpoint = checkpoint_path(args, start)
    # 接着训练时，下面这些都得与上次相同，否则接上的就不是同一次训练。
    digest = hashlib.sha256(repr((train_rows, val_rows)).encode()).hexdigest()
    same = {"config": config, "seed": args.seed, "data": digest, "trainable": trainable, "max_length": max_length}

    # 6.6　训练前的准确率和损失（各看几批，快）
    loaders = [train_loader, val_loader, test_loader]
    torch.manual_seed(args.seed)
    accuracy_before = [calc_accuracy_loader(loader, model, device, num_batches=10) for loader in loaders]
    with torch.no_grad():
        loss_before = [calc_loss_loader(loader, model, device, num_batches=EVAL_ITER) for loader in loaders]
    print("\n训练前　准确率　训练 {:.2%}　验证 {:.2%}　测试 {:.2%}（各看 10 批）".format(*accuracy_before))
    print("　　　　损失　　训练 {:.3f}　 验证 {:.3f}　 测试 {:.3f}（各看 5 批）\n".format(*loss_before))

    # 6.7　微调。原书把全部参数交给优化器，冻结的没有梯度，优化器会跳过它们。
    torch.manual_seed(args.seed)
    fused = tuple(int(number) for number in torch.__version__.split(".")[:2]) >= (2, 4)  # 旧版 PyTorch 在 CPU 上没有它
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings["learning_rate"], weight_decay=WEIGHT_DECAY, fused=fused)
    progress = None
    if args.resume:
        content = load_checkpoint(checkpoint)
        if any(content[name] != value for name, value in same.items()):
            raise ValueError(f"{checkpoint} 是用另一份数据、种子或设置训练的，接不上；去掉 --resume 从头训练，或换回原来的参数")
        try:
            model.load_state_dict(content["model"])
            optimizer.load_state_dict(content["optimizer"])
            progress = content["progress"]
            set_rng_state(progress["rng"], device)
            num_epochs = max(num_epochs, progress["epoch"])  # 已经训练得更久了，就不必再练
            print(f"接着　{checkpoint}：已训练到第 {progress['epoch'] + 1} 轮，共 {progress['step'] + 1} 步")
        except Exception:  # 名字都对、内容不对的文件，能引出各种异常
            raise ValueError(f"{checkpoint} 的内容不对，接不上；去掉 --resume 从头训练") from None
    last_saved = time.monotonic()

    def save(progress):
        """存下接着训练所需的一切。刚存过就跳过，训练完了一定存。

        参数:
            progress (dict): train_classifier_simple 的进度
        """
        nonlocal last_saved
        if time.monotonic() - last_saved < args.save_every and progress["epoch"] < num_epochs:
            return
        last_saved = time.monotonic()
        progress["rng"] = get_rng_state(device)
        save_checkpoint(checkpoint, same | {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "progress": progress})

    first_layer = model.pos_emb.weight.detach().clone()  # 留个底，训练完看冻结的层动没动
    train_losses, val_losses, train_accs, val_accs, examples_seen = train_classifier_simple(
        model, train_loader, val_loader, optimizer, device, num_epochs, EVAL_FREQ, EVAL_ITER, progress, save
    )

    accuracy = [calc_accuracy_loader(loader, model, device) for loader in loaders]
    print("\n训练后　准确率　训练 {:.2%}　验证 {:.2%}　测试 {:.2%}（全部）".format(*accuracy))
    for values, label in [((train_losses, val_losses), "loss"), ((train_accs, val_accs), "accuracy")]:
        # 准确率在每轮结束时才量，第一个点在第 1 轮，不在第 0 轮。
        first = 0 if label == "loss" else 1
        epochs = torch.linspace(first, num_epochs, len(values[0]))
        plot_values(epochs, epochs / num_epochs * examples_seen, *values, label, checkpoint.with_name(f"{label}_{checkpoint.stem}.png"))
    print(f"检查点　{checkpoint}\n图片　　loss_{checkpoint.stem}.png、accuracy_{checkpoint.stem}.png，在同一个文件夹")

    # 6.8　用它判断两条没见过的短信
    print()
    for text in EXAMPLES:
        print(f"{classify_review(text, model, tokenizer, device, max_length):<9}{text}")
    small = "；mini 常把第二条也判成垃圾，因为训练数据里没有这种说法，见 README 的学习笔记" if config["emb_dim"] < 768 and not args.quick else ""
    print(f"（书上的答案：spam、not spam{small}）")

    print("\n这个数字对吗？")
    book_data = path.stat().st_size == 477_907  # 大小与原书的那份相同，才核对书上的数
    if book_data and not args.quick:
        sizes = [len(train_rows), len(val_rows), len(test_rows), len(train_loader), len(val_loader), len(test_loader), max_length]
        confirm("书上的切分：1045 / 149 / 300 条，130 / 19 / 38 批，最长 120 个词元", sizes == [1045, 149, 300, 130, 19, 38, min(120, longest)], "读数据时关掉了引号，或抽样的种子不同")
    expected = 12 * config["emb_dim"] ** 2 + (10 + 3 * config["qkv_bias"]) * config["emb_dim"] + 2 * config["emb_dim"] + 2 * config["emb_dim"] + 2
    if trainable == "last_block":
        confirm(f"一块 + 最后的归一化 + 输出层 = {expected:,} 个参数参加训练", count == expected, "忘了冻结，或解冻了别的层")
        confirm("冻结的层一个数也没变（看位置嵌入）", torch.equal(first_layer, model.pos_emb.weight), "忘了 requires_grad = False")
    confirm(f"看过 {num_epochs} 轮 × {len(train_loader)} 批 × {BATCH_SIZE} 条 = {examples_seen:,} 条", examples_seen == num_epochs * len(train_loader) * BATCH_SIZE, "drop_last 没有开，或续训时跳错了批")
    official = start is not None and start.stat().st_size == 548_105_171  # OpenAI 的 124M
    if official and book_data and args.seed == 123 and not args.quick:
        near = np.allclose(accuracy_before, [0.4625, 0.45, 0.4875], atol=1e-4) and np.allclose(loss_before, [2.453, 2.583, 2.322], atol=2e-3)
        confirm("训练前与书上相同：46.25% / 45.00% / 48.75%，损失 2.453 / 2.583 / 2.322", near, "新输出层的种子不同，或权重装错了地方")
        if num_epochs == 5 and trainable == "last_block":
            # 没有 dropout，书上的数在各种 CPU 和 MPS 上都一样；这里仍留一点余地，给加法次序不同的设备。
            losses = np.array([train_losses, val_losses]).T
            confirm("每 50 步的损失与书上相同：2.153 / 2.392 一路降到 0.083 / 0.074", losses.shape == (13, 2) and np.allclose(losses, BOOK_LOSSES, atol=0.02), "学习率改过，或批的次序不同")
            confirm("准确率与书上相同：97.21% / 97.32% / 95.67%", np.allclose(accuracy, [0.9721, 0.9732, 0.9567], atol=0.01), "学习率改过，或批的次序不同")


def checkpoint_path(args, start):
    """检查点的文件名：起点不同，各存各的，互不覆盖。

    参数:
        args (argparse.Namespace): 命令行参数，见 main
        start (Path 或 None): 从哪份权重开始

    返回:
        Path: 文件名
    """
    return args.out / f"review_classifier_{start.stem if start else 'random'}{'_quick' if args.quick else ''}.pth"


def classify(args):
    """用微调好的模型判断一条短信。

    参数:
        args (argparse.Namespace): 命令行参数，见 main

    异常:
        ValueError: 短信是空的，或检查点有问题
    """
    if not args.text.strip():
        raise ValueError("--text 是空的，请在引号里写上要判断的短信")
    device = pick_device(args.device)
    start = choose_start(args.size, args.from_file, quick=True)  # quick：只为了知道文件名，不必真的训练一个
    path = checkpoint_path(args, None if args.random_init else start)
    content = load_checkpoint(path)
    try:
        model = GPTModel(content["config"])
        add_classification_head(model)
        model.load_state_dict(content["model"])
        answer = classify_review(args.text, model.to(device), tiktoken.get_encoding("gpt2"), device, content["max_length"])
    except Exception:  # 名字都对、内容不对的文件，能引出各种异常
        raise ValueError(f"{path} 的内容不对，请重新微调") from None
    print(f"分类器　{path}（训练到第 {content['progress']['epoch']} 轮）")
    print(f"{answer}　{args.text}")


if __name__ == "__main__":
    main()
