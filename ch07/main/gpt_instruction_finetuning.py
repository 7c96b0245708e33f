"""第 7 章 · 7.2–7.8 节　指令微调：教只会接话的 GPT 照着指令回答

读完、敲完这个脚本，你应该能不看书回答：
    1. 训练目标没有变，还是预测下一个词元；那它是怎样学会听指令的？
    2. 长短不一的样本凑成一批，目标里为什么第一个 50256 留着，后面的都换成 -100？
    3. 怎样从生成的文本里截出回答？没有裁判时，怎样给回答打分？

运行：
    python ch07/main/gpt_instruction_finetuning.py                                        # 微调，生成测试集的回答，打分
    python ch07/main/gpt_instruction_finetuning.py --ask "What is the opposite of hot?"   # 问微调好的模型一句
    python ch07/main/gpt_instruction_finetuning.py --resume                               # 中断之后接着训练，结果与没断过逐位相同
    python ch07/main/gpt_instruction_finetuning.py --size 355M                            # 书上的那次微调；先下载：python setup/download.py gpt2-355M instruction-data
    mini 约 2 分半，1.0 GB（2 核 CPU）；没有 ch05 训练的 mini 时，另加一两分钟先训练它

从哪份权重开始（总会打印出来）：
    --from-file 文件　　就用它
    --size 355M 等　　　下载的 gpt2-规模.safetensors
    都没有写　　　　　　有 355M 的权重就用它，其次 124M；都没有，就用 ch05/outputs/gpt_mini.pth，连它也没有，就先训练一个

形状记号（全书统一）：
    b 批大小　　t 序列长度（token 数）　　d 嵌入维度　　h 头数　　k 每个头的维度（k = d / h）　　V 词表大小　　n 样本数
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from functools import partial
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
URL = "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/ch07/01_main-chapter-code/instruction-data.json"
WEIGHT_DECAY = 0.1
EVAL_ITER = 5  # 评估时每个数据集只看 5 批，与原书相同
FINETUNE_SETTINGS = {
    # 书上的设置。GPT-2 已经懂英文，只要轻轻改一改说话的方式：步子小，两轮就够；再多就开始背题。
    "default": {"learning_rate": 5e-5, "num_epochs": 2, "batch_size": 8, "eval_freq": 5, "max_new_tokens": 256, "warmup": 0, "mask": False},
    # mini 几乎什么都不懂，要从头学这批题：步子大，轮数多，学习率先升后降；提示词和标题不算损失（练习 7.2），力气都用在回答上。
    # 这几个数是试出来的，见 README 的学习笔记。
    "mini": {"learning_rate": 1.5e-3, "num_epochs": 8, "batch_size": 8, "eval_freq": 100, "max_new_tokens": 40, "warmup": 50, "mask": True},
}
HEADER = "\n\n### Response:\n"  # 回答前面的标题


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


# region 沿用 ch04/main: LayerNorm, GELU, FeedForward, TransformerBlock, generate_text_simple
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


def generate_text_simple(model, idx, max_new_tokens, context_size):
    """贪心解码（greedy decoding）：每次都选分数最高的那个词元，接到后面，再问一次。（详解见 ch04/main/example_07_generate_text.py）"""
    for _ in range(max_new_tokens):
        idx_cond = idx[:, -context_size:]  # (b, t)
        with torch.no_grad():
            logits = model(idx_cond)  # (b, t, V)
        logits = logits[:, -1, :]  # (b, V)
        idx_next = torch.argmax(logits, dim=-1, keepdim=True)  # (b, 1)
        idx = torch.cat((idx, idx_next), dim=1)  # (b, t + 1)
    return idx


# endregion


# region 改写 ch04/main: GPTModel
class GPTModel(nn.Module):
    """GPT：词嵌入 + 位置嵌入 → 一摞 Transformer 块 → 归一化 → 对每个位置给出整个词表的分数。（详解见 ch04/main/gpt.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.Sequential(*[TransformerBlock(cfg) for _ in range(cfg["n_layers"])])
        self.final_norm = LayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)

    def forward(self, in_idx, keep=None):  # 改：keep (b, t) 标出要哪些位置的 logits；None 表示都要
        t = in_idx.shape[1]
        if t > self.pos_emb.num_embeddings:
            raise ValueError(f"输入有 {t} 个词元，超过了模型的上下文长度 {self.pos_emb.num_embeddings}")
        tok_embeds = self.tok_emb(in_idx)  # (b, t, d)
        pos_embeds = self.pos_emb(torch.arange(t, device=in_idx.device))  # (t, d)
        x = tok_embeds + pos_embeds  # (b, t, d)
        x = self.drop_emb(x)
        x = self.trf_blocks(x)  # (b, t, d)
        x = self.final_norm(x)
        if keep is not None:
            x = x[keep]  # (n, d)　改：-100 的位置不算损失，也就不必算 logits；mini 八成的计算都在输出层里，数字不变，快两倍多
        return self.out_head(x)  # (b, t, V) 或 (n, V)　给了 keep 就是后一种


# endregion


# region 沿用 ch05/main/gpt_generate.py: MODEL_CONFIGS, BASE_CONFIG, SIZES, generate, assign, load_weights_into_gpt, memory_needed, check_memory, read_weights, load_model
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


# region 沿用 ch05/main/gpt_train.py: text_to_token_ids, token_ids_to_text, calc_loss_loader, evaluate_model, generate_and_print_sample, get_rng_state, set_rng_state, plot_losses, save_checkpoint, load_checkpoint
def text_to_token_ids(text, tokenizer):
    """文本 → 模型的输入。（详解见 ch05/main/gpt_train.py）"""
    encoded = tokenizer.encode(text, allowed_special={"<|endoftext|>"})
    return torch.tensor(encoded).unsqueeze(0)  # (1, t)


def token_ids_to_text(token_ids, tokenizer):
    """模型的输出 → 文本。（详解见 ch05/main/gpt_train.py）"""
    return tokenizer.decode(token_ids.squeeze(0).tolist())


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


def generate_and_print_sample(model, tokenizer, device, start_context):
    """让模型接着提示词写 50 个词元，印成一行：看数字不如看它说的话。（详解见 ch05/main/gpt_train.py）"""
    model.eval()
    context_size = model.pos_emb.weight.shape[0]
    encoded = text_to_token_ids(start_context, tokenizer).to(device)
    token_ids = generate_text_simple(model, encoded, max_new_tokens=50, context_size=context_size)
    tqdm.write("    " + token_ids_to_text(token_ids, tokenizer).replace("\n", " "))
    model.train()


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


def plot_losses(epochs_seen, tokens_seen, train_losses, val_losses, path):
    """画训练损失和验证损失，下方横轴是轮数，上方横轴是看过的词元数。（详解见 ch05/main/gpt_train.py）"""
    import matplotlib.pyplot as plt
    import zhplot
    figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
    axis.plot(epochs_seen, train_losses, label="训练损失")
    axis.plot(epochs_seen, val_losses, linestyle="-.", label="验证损失")
    axis.set_xlabel("轮（epoch）")
    axis.set_ylabel("损失")
    axis.legend()
    top = axis.twiny()
    top.plot(tokens_seen, train_losses, alpha=0)
    top.set_xlabel("看过的词元数")
    figure.savefig(path, dpi=150)
    plt.close(figure)


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


def load_checkpoint(path):
    """读检查点。（详解见 ch05/main/gpt_train.py）"""
    if not path.is_file():
        raise ValueError(f"找不到检查点 {path}，请先运行 python ch05/main/gpt_train.py")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        raise ValueError(f"{path} 读不出来：文件已损坏，或者不是检查点") from None
    if not isinstance(content, dict) or not {"config", "seed", "text", "initial", "model", "optimizer", "progress"} <= content.keys():
        raise ValueError(f"{path} 不是 gpt_train.py 存的检查点，里面缺了配置、权重、优化器或进度")
    return content


# endregion


# region 改写 ch05/main/gpt_train.py: calc_loss_batch
def calc_loss_batch(input_batch, target_batch, model, device):
    """一批数据的损失：模型给正确的下一个词元的概率，取负对数，再对所有算损失的位置求平均。"""
    input_batch, target_batch = input_batch.to(device), target_batch.to(device)
    keep = target_batch != -100  # (b, t)　改：cross_entropy 会跳过 -100 的位置，索性连 logits 也不算
    logits = model(input_batch, keep)  # (n, V)　改：只有要算损失的 n 个位置
    return nn.functional.cross_entropy(logits, target_batch[keep])  # 改：(n, V)，(n,)，本来就是展平的


# endregion


# region 改写 ch06/main/gpt_class_finetune.py: choose_start
def choose_start(size, from_file, quick=False):
    """决定从哪份预训练权重开始微调；mini 还没有训练过，就先训练一个。"""
    if from_file:
        return Path(from_file)
    if size is None:
        for size in ("355M", "124M"):  # 改：这一章书上用 355M，所以先找它，其次才是 124M
            try:
                return find_gpt2_file(size)
            except FileNotFoundError:
                size = "mini"
    if size != "mini":
        return find_gpt2_file(size)
    chapter = Path(globals().get("__file__", "notebook.ipynb")).resolve().parents[2] / "ch05"
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


# endregion


def download_and_load_file(file_path, url, keys=("instruction", "input", "output")):
    """读指令数据。名字与原书的相同，但它不自己上网：没有文件，就告诉你怎么下载。

    参数:
        file_path (str 或 Path): JSON 文件
        url (str): 原书的下载网址，写进报错里
        keys (tuple[str, ...]): 每一条必须有的键，值都是文字

    返回:
        list[dict]: 每条一个字典，如 {"instruction": "…", "input": "…", "output": "…"}

    异常:
        FileNotFoundError: 没有这个文件
        ValueError: 不是 JSON、不是列表，或某一条不对（会说是第几行或第几条）

    出处: 原书 7.2 节
    """
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
            if "<|endoftext|>" in entry[key]:  # 它是"到此为止"的记号，混在正文里会把一条切成两条
                raise ValueError(f"{file_path} 的第 {number} 条的 {key} 里有 <|endoftext|>，请去掉")
        if not entry["instruction"].strip():
            raise ValueError(f"{file_path} 的第 {number} 条的 instruction 是空的")
    return data


def format_input(entry):
    """一条数据 → Alpaca 格式的提示词，到回答之前为止。

    参数:
        entry (dict): 有 instruction 和 input；input 为空时，整段省略

    返回:
        str: 提示词

    出处: 原书 7.2 节；格式来自 Stanford Alpaca，2023
    """
    instruction_text = (
        f"Below is an instruction that describes a task. "
        f"Write a response that appropriately completes the request."
        f"\n\n### Instruction:\n{entry['instruction']}"
    )
    input_text = f"\n\n### Input:\n{entry['input']}" if entry["input"] else ""
    return instruction_text + input_text


class InstructionDataset(Dataset):
    """指令数据集：提示词接上回答，整段变成词元编号。长短不一，凑批时再补齐。

    参数:
        data (list[dict]): 指令数据
        tokenizer: 分词器

    出处: 原书 7.3 节
    """

    def __init__(self, data, tokenizer):
        self.data = data
        # 提前分好词，免得每一轮都重来。提示词和回答在同一段里：对模型来说只有一段文本，它照样逐个预测下一个词元，
        # 读得多了，看到 "### Response:" 就知道该轮到回答了。
        self.encoded_texts = []
        for entry in data:
            instruction_plus_input = format_input(entry)
            response_text = f"\n\n### Response:\n{entry['output']}"
            self.encoded_texts.append(tokenizer.encode(instruction_plus_input + response_text))

    def __getitem__(self, index):
        """取一条。

        参数:
            index (int): 第几条

        返回:
            list[int]: 词元编号，长度各不相同
        """
        return self.encoded_texts[index]

    def __len__(self):
        """一共几条。

        返回:
            int: 条数
        """
        return len(self.data)


def custom_collate_fn(batch, pad_token_id=50256, ignore_index=-100, allowed_max_length=None, device="cpu"):
    """把长短不一的几条凑成一批，同时做好目标。怎样一步步写成这样，见 example_02_collate.py。

    参数:
        batch (list[list[int]]): 几条样本的词元编号
        pad_token_id (int): 结束和填充都用它，50256 就是 <|endoftext|>
        ignore_index (int): 目标里填它的位置不算损失；-100 是 cross_entropy 的默认值
        allowed_max_length (int 或 None): 最长多少个词元，超出的截掉；应不超过模型的上下文长度
        device (str 或 torch.device): 放到哪个设备上

    形状:
        输入和目标都是 (b, t)，t 是这一批里最长的那条加 1 个结束词元，再去掉 1 个（错开一位）

    返回:
        tuple[Tensor, Tensor]: 输入和目标

    出处: 原书 7.3 节
    """
    # 只补到这一批里最长的，不是全部数据里最长的：短的批就短，省下许多白算的填充。
    batch_max_length = max(len(item) + 1 for item in batch)
    inputs_lst, targets_lst = [], []
    for item in batch:
        # ① 末尾加一个结束词元，再补齐。item.copy()：+= 会改动原来的列表，不复制的话，每一轮都会多出一个结束词元。
        new_item = item.copy()
        new_item += [pad_token_id]
        padded = new_item + [pad_token_id] * (batch_max_length - len(new_item))
        # ② 错开一位：每个位置的目标是它右边的词元，与预训练完全一样。
        inputs = torch.tensor(padded[:-1])  # (t,)
        targets = torch.tensor(padded[1:])  # (t,)
        # ③ 目标里第一个 50256 留着，教模型"说完就停"；后面的只是填充，换成 -100。
        #    不换的话，短的样本会有一大半损失花在"结束之后还是结束"上，那是白学。
        indices = torch.nonzero(targets == pad_token_id).squeeze()  # (n,) 或 ()　目标里 50256 的位置；只有一个时没有维度
        if indices.numel() > 1:
            targets[indices[1:]] = ignore_index
        # ④ 太长的截掉尾巴。连结束词元也会一起截掉：这条样本就不教"停"了。
        if allowed_max_length is not None:
            inputs = inputs[:allowed_max_length]
            targets = targets[:allowed_max_length]
        inputs_lst.append(inputs)
        targets_lst.append(targets)
    return torch.stack(inputs_lst).to(device), torch.stack(targets_lst).to(device)  # (b, t)，(b, t)


def masked_collate_fn(batch, ignore_index=-100, **options):
    """凑批，再把提示词和标题的目标也换成 -100：只学回答，不学怎样提问。

    参数:
        batch (list[list[int]]): 几条样本的词元编号
        ignore_index (int): 不算损失的位置填什么
        options: 其余的函数参数，原样交给 custom_collate_fn

    形状:
        输入和目标都是 (b, t)

    返回:
        tuple[Tensor, Tensor]: 输入和目标

    出处: 原书练习 7.2（那里标题也算损失；小模型连这几个词元的力气也要省，标题改由提问的人写上）
    """
    inputs, targets = custom_collate_fn(batch, ignore_index=ignore_index, **options)
    header = [198, 198, 21017, 18261, 25, 198]  # HEADER 的词元编号
    for item, target in zip(batch, targets):
        start = next((i for i in range(len(item)) if item[i : i + len(header)] == header), None)
        if start is not None:
            target[: start + len(header) - 1] = ignore_index  # 目标错开了一位，所以减 1：第一个要学的是回答的开头
    return inputs, targets


def split_data(data):
    """按文件里的次序切成训练、测试、验证三份：85%、10%、5%。不打乱，所以数据在文件里就应当是乱序的。

    参数:
        data (list[dict]): 全部数据

    返回:
        tuple[list, list, list]: 训练、验证、测试；每条都在其中一份里

    出处: 原书 7.2 节
    """
    train_portion = int(len(data) * 0.85)
    test_portion = int(len(data) * 0.1)
    train_data = data[:train_portion]
    test_data = data[train_portion : train_portion + test_portion]
    val_data = data[train_portion + test_portion :]
    return train_data, val_data, test_data


# region 改写 ch05/main/gpt_train.py: train_model_simple
def train_model_simple(
    model, train_loader, val_loader, optimizer, device, num_epochs, eval_freq, eval_iter, start_context, tokenizer, progress=None, save=None,
    schedule=None,  # 改：第几步 → 学习率的几成；None 表示不变
):  # fmt: skip
    """训练循环：一批批地看数据，每批算损失、求梯度、更新权重。"""
    if progress is None:
        progress = {"epoch": 0, "batch": 0, "step": -1, "tokens_seen": 0, "train_losses": [], "val_losses": [], "track_tokens_seen": []}
    p = progress
    # 改：每批长短不一，一共多少词元事先不知道，所以进度条数的是步，速度另外写在后面
    bar = tqdm(total=num_epochs * len(train_loader), initial=p["step"] + 1, unit=" 步", desc="训练", mininterval=1, ncols=90)
    started, before = time.monotonic(), p["tokens_seen"]

    for epoch in range(p["epoch"], num_epochs):
        model.train()
        now = get_rng_state(device)
        if p["batch"] == 0:
            p["epoch_rng"] = now
        set_rng_state(p["epoch_rng"], device)
        batches = iter(train_loader)
        if p["batch"] > 0:
            next(islice(batches, p["batch"] - 1, None))
            set_rng_state(now, device)

        for input_batch, target_batch in batches:
            if schedule:  # 改：只看步数，所以续训时接得上
                for group in optimizer.param_groups:
                    group["lr"] = optimizer.defaults["lr"] * schedule(p["step"] + 1)
            optimizer.zero_grad()
            loss = calc_loss_batch(input_batch, target_batch, model, device)
            loss.backward()
            optimizer.step()
            p["tokens_seen"] += input_batch.numel()
            p["step"] += 1
            p["batch"] += 1
            bar.set_postfix_str(f"{(p['tokens_seen'] - before) / (time.monotonic() - started):,.0f} 词元/秒", refresh=False)  # 改：填充的也算
            bar.update()  # 改：一步

            if p["step"] % eval_freq == 0:
                train_loss, val_loss = evaluate_model(model, train_loader, val_loader, device, eval_iter)
                p["train_losses"].append(train_loss)
                p["val_losses"].append(val_loss)
                p["track_tokens_seen"].append(p["tokens_seen"])
                tqdm.write(f"第 {epoch + 1:2} 轮　第 {p['step']:4} 步　训练损失 {train_loss:.3f}　验证损失 {val_loss:.3f}")  # 改：步数上千
                if save:
                    save(p)

        generate_and_print_sample(model, tokenizer, device, start_context)
        p["epoch"], p["batch"] = epoch + 1, 0
        if save:
            save(p)
    bar.close()
    return p["train_losses"], p["val_losses"], p["track_tokens_seen"]


# endregion


def generate_response(model, tokenizer, entry, device, max_new_tokens=256, header=""):
    """让模型回答一条指令，截出回答。

    参数:
        model (nn.Module): 语言模型
        tokenizer: 分词器
        entry (dict): 有 instruction 和 input
        device (torch.device): 在哪里算
        max_new_tokens (int): 最多写几个词元
        header (str): 接在提示词后面的标题；原书不给，由模型自己写出来。训练时标题没算损失的话，要给 HEADER

    返回:
        str: 回答

    出处: 原书 7.7 节（那里写在循环里）
    """
    input_text = format_input(entry) + header
    token_ids = generate(
        model,
        text_to_token_ids(input_text, tokenizer).to(device),
        max_new_tokens=max_new_tokens,
        context_size=model.pos_emb.weight.shape[0],
        eos_id=50256,  # 模型写出结束词元，就是它认为说完了
    )
    generated_text = token_ids_to_text(token_ids, tokenizer)
    # 生成的文本 = 提示词 + "\n\n### Response:\n" + 回答。提示词原样在最前面，按字符数切掉；标题也不要。
    return generated_text[len(input_text) :].replace("### Response:", "").strip()


def normalize(text):
    """比较之前抹平无关紧要的差别：大小写、标点、空白。

    参数:
        text (str): 一句话

    返回:
        str: 只剩小写的字母、数字和连字符，单词之间一个空格
    """
    return " ".join(re.sub(r"[^\w\s-]", " ", text.lower()).split())


def score_responses(test_data, train_data):
    """不用裁判，直接与参考答案比：一字不差的有几条，抹平标点大小写之后相同的有几条。

    参数:
        test_data (list[dict]): 每条有 output 和 model_response；自带的数据还有 rule（哪条规则）和 item（问的是什么）
        train_data (list[dict]): 训练集，用来分辨这个事实训练时问过没有

    返回:
        tuple[int, int, dict]: 一字不差的条数、抹平后相同的条数，和（规则，事实是否问过）→ 相同的条数和总数
    """

    def fact(entry):
        return entry.get("rule"), entry.get("item", normalize(entry["output"]))  # 别的数据没有 item，就看答案出现过没有

    seen = {fact(entry) for entry in train_data}
    exact, same, table = 0, 0, defaultdict(lambda: [0, 0])
    for entry in test_data:
        exact += entry["model_response"] == entry["output"]
        correct = normalize(entry["model_response"]) == normalize(entry["output"])
        same += correct
        row = table[entry.get("rule", "（没有分类）"), fact(entry) in seen]
        row[0] += correct
        row[1] += 1
    return exact, same, dict(table)


def training_memory(config, batch_size, length):
    """估计训练要多少内存，读权重之前就能算。

    参数:
        config (dict): 模型配置
        batch_size (int): 批大小
        length (int): 一批最长多少个词元

    返回:
        float: 单位 GB（2 的 30 次方字节）
    """
    d, n_layers, heads = config["emb_dim"], config["n_layers"], config["n_heads"]
    weights = 4 * memory_needed(config)  # 权重、梯度、AdamW 的两份动量，各一份
    # 激活值：前向时留着、反向时要用的中间结果。每层每个词元约 70·d 个数和 4·h·t 个注意力权重，输出层约 4·V 个，各 4 字节。
    per_token = n_layers * (70 * d + 4 * heads * length) + 4 * config["vocab_size"]
    return weights + 4 * batch_size * length * per_token / 2**30 + 0.5


def write_json(path, data):
    """写 JSON：先写临时文件，写完整了再改名。

    参数:
        path (Path): 文件
        data (list): 内容
    """
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(data, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, path)


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
    """指令微调；给了 --ask，就问微调好的模型一句。"""
    parser = argparse.ArgumentParser(description="7.2–7.8 节　指令微调：教 GPT 照着指令回答")
    parser.add_argument("--size", choices=SIZES, help="从哪种规模开始（默认：有 355M 的权重就用它，其次 124M，都没有就用 mini）")
    parser.add_argument("--from-file", type=Path, help="从这个权重文件开始；与 --ask 一起用时，就问这个模型")
    parser.add_argument("--data", type=Path, help="指令数据，JSON（默认：找到的 instruction-data.json，没有就用自带的 instructions.json）")
    parser.add_argument("--epochs", type=int, help="总共几轮（默认：mini 16；其余 2，与原书相同）")
    parser.add_argument("--ask", metavar="指令", help="不训练，问微调好的模型一句")
    parser.add_argument("--input", default="", metavar="文字", help="与 --ask 一起用：指令要处理的文字，如要改错的句子")
    parser.add_argument("--resume", action="store_true", help="从上次的检查点接着训练")
    parser.add_argument("--device", default="auto", help="auto、mps、cuda 或 cpu（默认：auto；核对原书的数字请用 cpu）")
    parser.add_argument("--seed", type=int, default=123, help="随机种子：每轮的次序（默认：123，与原书相同）")
    parser.add_argument("--out", type=Path, default=OUTPUTS, help="模型、回答和图片写到哪个文件夹（默认：ch07/outputs）")
    parser.add_argument("--save-every", type=float, default=60, help="最多隔几秒存一次检查点（默认：60；355M 的检查点有 4.9 GB，可以隔久一点）")
    parser.add_argument("--quick", action="store_true", help="用 mini 和少量数据训练 1 轮，看看流程")
    args = parser.parse_args()
    try:
        ask(args) if args.ask is not None else run(args)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("\n停下了。训练到一半的话，加上 --resume 就能接着训练")
        sys.exit(130)


def run(args):
    """按命令行参数微调，再生成测试集的回答，打分。

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
    device = pick_device(args.device)

    # 7.2　数据
    path = args.data or find_data("instruction-data.json", "instructions.json")
    data = download_and_load_file(path, URL)
    train_data, val_data, test_data = split_data(data)
    print(f"数据　{path}（{len(data):,} 条：训练 {len(train_data)}，验证 {len(val_data)}，测试 {len(test_data)}）")
    if args.quick:
        train_data, val_data, test_data = train_data[:64], val_data[:8], test_data[:4]

    # 7.5　预训练过的模型
    size = args.size or ("mini" if args.quick and not args.from_file else None)
    start = choose_start(size, args.from_file, args.quick)
    named = size or next((size for size in SIZES if start and start.name == f"gpt2-{size}.safetensors"), "mini")
    settings = FINETUNE_SETTINGS["mini" if named == "mini" else "default"]
    if named != "mini":
        check_training_memory(BASE_CONFIG | SIZES[named], settings["batch_size"])  # 读权重之前先看看装不装得下
    if start:
        model, config, _ = load_model(start, size)
    else:
        torch.manual_seed(args.seed)
        config = BASE_CONFIG | SIZES["mini"] | {"context_length": 256, "qkv_bias": False}
        model = GPTModel(config)
    settings = FINETUNE_SETTINGS["mini" if config["emb_dim"] < 768 else "default"]
    check_training_memory(config, settings["batch_size"])
    model.to(device)
    num_epochs = args.epochs or (1 if args.quick else settings["num_epochs"])
    eval_freq = 4 if args.quick else settings["eval_freq"]
    context = config["context_length"]
    header = HEADER if settings["mask"] else ""
    print(f"权重　{start or '随机的，没有预训练'}（{config['n_layers']} 层，{config['emb_dim']} 维）")

    # 7.4　数据加载器
    tokenizer = tiktoken.get_encoding("gpt2")
    collate = partial(masked_collate_fn if settings["mask"] else custom_collate_fn, device=device, allowed_max_length=min(1024, context))  # partial：先填好两个参数，DataLoader 只会给它一批
    batch_size = settings["batch_size"]
    torch.manual_seed(args.seed)
    train_loader = DataLoader(InstructionDataset(train_data, tokenizer), batch_size, shuffle=True, drop_last=True, num_workers=0, collate_fn=collate)
    val_loader = DataLoader(InstructionDataset(val_data, tokenizer), batch_size, shuffle=False, drop_last=False, num_workers=0, collate_fn=collate)
    if len(train_loader) == 0 or not val_data or not test_data:
        raise ValueError(f"{path} 太少：只有 {len(data)} 条，切开之后凑不出一批（{batch_size} 条）训练数据，至少要 20 条")
    print(f"设置　{len(train_loader)} 批 × {num_epochs} 轮，每批 {batch_size} 条，学习率 {settings['learning_rate']:g}，在 {device} 上训练")
    print(f"　　　{'只有回答算损失，提示词和标题不算（练习 7.2 的做法）' if settings['mask'] else '提示词和回答都算损失，与原书相同'}")

    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError:
        raise OSError(f"建不了文件夹 {args.out}：那里有个同名的文件，或没有写的权限；请用 --out 换个地方") from None
    label = model_label(config) + ("-quick" if args.quick else "")
    checkpoint = args.out / f"{label}-sft-checkpoint.pth"
    # 接着训练时，下面这些都得与上次相同，否则接上的就不是同一次训练。
    same = {"config": config, "seed": args.seed, "text": hashlib.sha256(repr((train_data, val_data, settings, num_epochs if settings["warmup"] else None)).encode()).hexdigest()}

    # 7.6　微调
    fused = tuple(int(number) for number in torch.__version__.split(".")[:2]) >= (2, 4)  # 旧版 PyTorch 在 CPU 上没有它
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings["learning_rate"], weight_decay=WEIGHT_DECAY, fused=fused)
    total, warmup = num_epochs * len(train_loader), settings["warmup"]

    def schedule(step):
        """学习率先升后降：头几步权重还乱，步子太大会冲坏；最后步子越来越小，才停得准。

        参数:
            step (int): 第几步，从 0 数起

        返回:
            float: 学习率的几成
        """
        return min(1, (step + 1) / warmup) * (1 - step / total)

    progress = None
    if args.resume:
        if not checkpoint.is_file():
            raise ValueError(f"找不到检查点 {checkpoint}，没有可以接的；去掉 --resume 从头训练")
        content = load_checkpoint(checkpoint)
        if any(content[name] != value for name, value in same.items()):
            raise ValueError(f"{checkpoint} 是用另一份数据、种子或设置训练的，接不上；去掉 --resume 从头训练，或换回原来的参数")
        try:
            model.load_state_dict(content["model"])
            optimizer.load_state_dict(content["optimizer"])
            progress, (initial, before) = content["progress"], content["initial"]
            set_rng_state(progress["rng"], device)
            print(f"接着　{checkpoint}：已训练到第 {progress['epoch'] + 1} 轮，共 {progress['step'] + 1} 步")
        except Exception:  # 名字都对、内容不对的文件，能引出各种异常
            raise ValueError(f"{checkpoint} 的内容不对，接不上；去掉 --resume 从头训练") from None
    else:
        torch.manual_seed(args.seed)
        initial = evaluate_model(model, train_loader, val_loader, device, EVAL_ITER)
        few = test_data[: 10 if config["emb_dim"] < 768 else 3]  # 还不会停的模型，每条都要写满，所以只看几条
        model.eval()
        before = sum(normalize(generate_response(model, tokenizer, entry, device, 20, header)) == normalize(entry["output"]) for entry in few) / len(few)
        print(f"\n训练前　训练损失 {initial[0]:.3f}　验证损失 {initial[1]:.3f}　测试集前 {len(few)} 条答对 {before:.0%}\n")
        torch.manual_seed(args.seed)
    last_saved = time.monotonic()

    def save(progress):
        """存下接着训练所需的一切。刚存过就跳过，训练完了一定存。

        参数:
            progress (dict): train_model_simple 的进度
        """
        nonlocal last_saved
        if time.monotonic() - last_saved < args.save_every and progress["epoch"] < num_epochs:
            return
        last_saved = time.monotonic()
        progress["rng"] = get_rng_state(device)
        states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "progress": progress}
        save_checkpoint(checkpoint, same | {"initial": (initial, before)} | states)

    start_time = time.time()
    train_losses, val_losses, tokens_seen = train_model_simple(
        model, train_loader, val_loader, optimizer, device, num_epochs, eval_freq, EVAL_ITER, format_input(val_data[0]) + header, tokenizer,
        progress, save, schedule if warmup else None,
    )  # fmt: skip
    final = evaluate_model(model, train_loader, val_loader, device, EVAL_ITER)
    print(f"\n训练用了 {(time.time() - start_time) / 60:.2f} 分钟　训练损失 {final[0]:.3f}　验证损失 {final[1]:.3f}")
    picture = args.out / f"loss-plot-{label}.png"
    plot_losses(torch.linspace(0, num_epochs, len(train_losses)), tokens_seen, train_losses, val_losses, picture)
    save_checkpoint(args.out / f"{label}-sft.pth", model.state_dict())  # 先存模型：生成回答很慢，中途停下也不白练

    # 7.7　生成并保存测试集的回答
    model.eval()
    answered = [
        entry | {"model_response": generate_response(model, tokenizer, entry, device, settings["max_new_tokens"], header)}
        for entry in tqdm(test_data, desc="生成回答", ncols=90)
    ]
    responses = args.out / f"instruction-data-with-response-{label}.json"
    write_json(responses, answered)
    print(f"损失曲线　{picture}\n模型　　　{args.out / f'{label}-sft.pth'}\n回答　　　{responses}\n")
    for entry in answered[:3]:
        question = entry["instruction"] + (f"　[{entry['input']}]" if entry["input"] else "")
        print(f"问　{question}\n　　参考答案　{entry['output']}\n　　模型回答　{entry['model_response']}")

    # 7.8　打分
    exact, correct, table = score_responses(answered, train_data)
    print(f"\n得分　一字不差 {exact} / {len(answered)}，抹平大小写和标点之后 {correct} / {len(answered)}（{correct / len(answered):.0%}）")
    print_table(table)
    print(f"　　　请另一个模型打分：python ch07/main/ollama_evaluate.py --file-path {responses}")

    print("\n这个数字对吗？")
    book_data = path.name == "instruction-data.json" and len(data) == 1100
    if book_data and not args.quick:
        confirm("书上的切分：训练 935，验证 55，测试 110", (len(train_data), len(val_data), len(test_data)) == (935, 55, 110), "比例写错了，或切之前打乱了")
    # 训练集每次打乱，前后量的不是同几批；验证集不打乱，前后才可比。
    confirm(f"验证损失从 {initial[1]:.2f} 降到 {final[1]:.2f}", final[1] < initial[1], "学习率太大，或目标没有错开一位")
    confirm(f"看过的词元 {tokens_seen[-1]:,} 个，包括填充", tokens_seen[-1] > 0, "一步都没有训练")
    official = start is not None and start.stat().st_size == 1_519_984_962  # OpenAI 的 355M
    if official and book_data and args.seed == 123 and not args.quick:
        near = abs(initial[0] - 3.8259) < 0.002 and abs(initial[1] - 3.7619) < 0.002
        confirm("训练前的损失与书上相同：3.826 / 3.762", near, "collate 里的 -100 或填充写错了，或某个权重装错了地方")
        if num_epochs == 2:
            confirm("训练损失约 0.30，验证损失约 0.66，与书上相差不到 0.03", abs(train_losses[-1] - 0.299) < 0.03 and abs(val_losses[-1] - 0.657) < 0.03, "学习率改过，或批的次序不同")


def check_training_memory(config, batch_size):
    """训练之前，看看这台机器装不装得下。

    参数:
        config (dict): 模型配置
        batch_size (int): 批大小

    异常:
        ValueError: 装不下
    """
    memory, need = total_memory(), training_memory(config, batch_size, 128)  # 书上的数据，一批最长约 90 个词元
    if memory is not None and need > memory:
        fit = [size for size in SIZES if training_memory(BASE_CONFIG | SIZES[size], batch_size, 128) <= memory]
        raise ValueError(f"微调它约要 {need:.1f} GB 内存，这台机器只有 {memory:.1f} GB；装得下的有：{'、'.join(f'--size {size}' for size in fit) or '没有'}")


def model_label(config):
    """输出文件名里怎样称呼这个模型：与原书相同，如 gpt2-medium355M。

    参数:
        config (dict): 模型配置

    返回:
        str: 名字
    """
    names = {(sizes["emb_dim"], sizes["n_layers"]): re.sub(r"[ ()]", "", name) for name, sizes in MODEL_CONFIGS.items()}
    return names.get((config["emb_dim"], config["n_layers"]), "gpt-mini")


def print_table(table):
    """按规则印得分：训练时问过的事实（换了一种问法），和没问过的，分开数。

    参数:
        table (dict): score_responses 的结果
    """
    print("　　　规则　　　　 问过的事实，新的问法　　没问过的事实")
    for rule in sorted({rule for rule, _ in table}):
        cells = [f"{table[rule, seen][0]:3} / {table[rule, seen][1]:<3}" if (rule, seen) in table else "   —     " for seen in (True, False)]
        print(f"　　　{rule:<16}{cells[0]:>12}{cells[1]:>18}")
    totals = [[sum(table[key][part] for key in table if key[1] is seen) for part in (0, 1)] for seen in (True, False)]
    print(f"　　　{'合计':<14}" + f"{totals[0][0]:5} / {totals[0][1]:<3}" + f"{totals[1][0]:12} / {totals[1][1]:<3}")


def ask(args):
    """问微调好的模型一句。

    参数:
        args (argparse.Namespace): 命令行参数，见 main

    异常:
        ValueError: 指令是空的、太长，或还没有微调过
    """
    if not args.ask.strip():
        raise ValueError("--ask 是空的，请在引号里写上指令")
    device = pick_device(args.device)
    label = model_label(SIZES[args.size]) if args.size else "*"
    found = sorted(args.out.glob(f"{label}-sft.pth"), key=lambda path: path.stat().st_mtime)
    if not args.from_file and not found:
        raise ValueError(f"{args.out} 里还没有微调好的模型，先运行 python ch07/main/gpt_instruction_finetuning.py")
    path = args.from_file or found[-1]
    model, config, _ = load_model(path, args.size)
    entry, tokenizer = {"instruction": args.ask, "input": args.input}, tiktoken.get_encoding("gpt2")
    length = text_to_token_ids(format_input(entry), tokenizer).shape[1]
    if length >= config["context_length"]:
        raise ValueError(f"指令太长：套上格式有 {length} 个词元，模型的上下文长度只有 {config['context_length']}")
    settings = FINETUNE_SETTINGS["mini" if config["emb_dim"] < 768 else "default"]
    print(f"模型　{path}")
    print(generate_response(model.to(device).eval(), tokenizer, entry, device, settings["max_new_tokens"], HEADER if settings["mask"] else ""))


if __name__ == "__main__":
    main()
