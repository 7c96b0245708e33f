"""第 5 章 · 练习 5.5　OpenAI 的模型没见过这篇文章吗？量一量它的损失

题目：　把 OpenAI 的 GPT-2 124M 装进 GPTModel，在 the-verdict.txt 的训练集和验证集上各量一次损失。这两个数说明什么？
先想：　自己训练的模型，训练损失 0.5，验证损失 5.8。OpenAI 的没用这篇文章专门训练过，两个损失谁高谁低，差多少？（先想 10 秒，再运行）
解法：　① 装上权重；② 照 5.1.3 节切出训练集和验证集（长 256，批大小 2）；③ 各量一次，比较两个数的差。
学到：　OpenAI 的 124M 是 3.7547 / 3.5596：两个差不多，所以它没有把"训练集"那部分背下来，谈不上过拟合；验证损失更低，只是后面那段碰巧好猜。
　　　　但也不能说它没见过：《The Verdict》是 1908 年的公版书，很可能就在它的训练数据里，而且两部分都见过。真要评估，得用模型出来之后才写的文章。
　　　　自己训练的 mini，训练损失低、验证损失高，差好几倍：那是背书。

运行：
    python ch05/experiments/exercise_5_5_openai_loss.py                 # 有 124M 就量它；没有就量 ch05/outputs/gpt_mini.pth；都没有，当场训练一个小的
    python ch05/experiments/exercise_5_5_openai_loss.py --size 1558M    # 原书也量了它：3.3046 / 3.1195
    python ch05/experiments/exercise_5_5_openai_loss.py --quick         # 训练集只看 2 批
    mini 约 5 秒，0.7 GB；124M 约 15 秒，1.5 GB（2 核 CPU）

形状记号：　b 批大小　　t 序列长度（token 数）　　d 嵌入维度　　h 头数　　k 每个头的维度　　V 词表大小
"""

import argparse
import math
import os
import re
import sys
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

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
CPU = torch.device("cpu")
BOOK = {"124M": (3.7547, 3.5596), "1558M": (3.3046, 3.1195)}  # 原书在 the-verdict.txt 上量到的


# region 沿用 ch02/main: GPTDatasetV1, create_dataloader_v1
class GPTDatasetV1(Dataset):
    """把一段长文本切成许多等长的"输入—目标"样本。（详解见 ch02/main/example_03_sliding_window.py）"""

    def __init__(self, txt, tokenizer, max_length, stride):
        token_ids = tokenizer.encode(txt, allowed_special={"<|endoftext|>"})
        if len(token_ids) <= max_length:
            raise ValueError(f"文本只有 {len(token_ids)} 个词元，凑不出一个长 {max_length} 的样本（目标还要多 1 个），请换长一点的文本或改小 max_length")
        ids = torch.tensor(token_ids)
        self.input_ids = ids[:-1].unfold(0, max_length, stride)  # (n, t)
        self.target_ids = ids[1:].unfold(0, max_length, stride)  # (n, t)

    def __len__(self):
        return len(self.input_ids)

    def __getitem__(self, idx):
        return self.input_ids[idx], self.target_ids[idx]


def create_dataloader_v1(txt, batch_size=4, max_length=256, stride=128, shuffle=True, drop_last=True, num_workers=0):
    """文本 → 一批一批的（输入，目标）。（详解见 ch02/main/example_03_sliding_window.py）"""
    dataset = GPTDatasetV1(txt, tiktoken.get_encoding("gpt2"), max_length, stride)
    return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, drop_last=drop_last, num_workers=num_workers)


# endregion


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


# region 沿用 ch05/main/gpt_train.py: text_to_token_ids, calc_loss_batch, calc_loss_loader, load_checkpoint
def text_to_token_ids(text, tokenizer):
    """文本 → 模型的输入。（详解见 ch05/main/gpt_train.py）"""
    encoded = tokenizer.encode(text, allowed_special={"<|endoftext|>"})
    return torch.tensor(encoded).unsqueeze(0)  # (1, t)


def calc_loss_batch(input_batch, target_batch, model, device):
    """一批数据的损失：模型给正确的下一个词元的概率，取负对数，再对所有位置求平均。（详解见 ch05/main/gpt_train.py）"""
    input_batch, target_batch = input_batch.to(device), target_batch.to(device)
    logits = model(input_batch)  # (b, t, V)
    return nn.functional.cross_entropy(logits.flatten(0, 1), target_batch.flatten())  # (b·t, V)，(b·t,)


def calc_loss_loader(data_loader, model, device, num_batches=None):
    """一个数据集的平均损失。（详解见 ch05/main/gpt_train.py）"""
    losses = [calc_loss_batch(inputs, targets, model, device).item() for inputs, targets in islice(data_loader, num_batches)]
    return sum(losses) / len(losses) if losses else float("nan")


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


# region 沿用 ch05/experiments/exercise_5_2_temperature_top_k.py: trained_model
def trained_model(checkpoint, steps=60):
    """得到一个训练过的模型：有 gpt_train.py 的检查点就用，没有就当场训练一个小的。（详解见 ch05/experiments/exercise_5_2_temperature_top_k.py）"""
    try:
        content = load_checkpoint(checkpoint)
        model = GPTModel(content["config"])
        model.load_state_dict(content["model"])
        return model.eval(), content["config"], f"gpt_train.py 训练的 {checkpoint}"
    except (ValueError, RuntimeError, KeyError, TypeError):
        pass
    config = {"vocab_size": 50257, "context_length": 64, "emb_dim": 64, "n_heads": 2, "n_layers": 2, "drop_rate": 0.0, "qkv_bias": False}
    path = find_data("the-verdict.txt", "story-en.txt")
    ids = text_to_token_ids(read_text(path), tiktoken.get_encoding("gpt2"))[0, :1000]  # (n,)
    torch.manual_seed(123)
    model = GPTModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(steps):
        batch = ids.unfold(0, 65, 1)[torch.randint(len(ids) - 64, (2,))]  # (b, t + 1)
        optimizer.zero_grad()
        logits = model(batch[:, :-1])  # (b, t, V)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        optimizer.step()
    return model.eval(), config, f"当场用 {path.name} 的开头训练了 {steps} 步的小模型，损失 {loss.item():.2f}（先运行 python ch05/main/gpt_train.py，就换成 mini）"


# endregion


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
    """装上权重，在训练集和验证集上各量一次损失。"""
    parser = argparse.ArgumentParser(description="练习 5.5　OpenAI 的模型在这篇文章上的损失")
    parser.add_argument("--size", choices=GPT2_SETTINGS, help="OpenAI 的哪种规模（默认：有 124M 就用它，没有就用自己训练的）")
    parser.add_argument("--quick", action="store_true", help="训练集只看 2 批")
    args = parser.parse_args()
    try:
        # ① 用哪个模型
        try:
            weights = find_gpt2_file(args.size or "124M")
            model, config, kind = load_model(weights, args.size or "124M")
            origin = f"{kind} {weights}"
        except FileNotFoundError:
            if args.size:  # 点名要的没有，就不换成别的
                raise
            kind = "自己训练的"
            model, config, origin = trained_model(OUTPUTS / "gpt_mini.pth", steps=20 if args.quick else 60)
        model.eval()  # 关掉 dropout，损失才是模型的真实水平

        # ② 切出训练集和验证集
        path = find_data("the-verdict.txt", "story-en.txt")
        text = read_text(path)
        split, t = int(0.90 * len(text)), min(256, config["context_length"])  # OpenAI 的能看 1024 个，但为了与前面比，也用 256
        train_loader = create_dataloader_v1(text[:split], 2, max_length=t, stride=t)
        val_loader = create_dataloader_v1(text[split:], 2, max_length=t, stride=t, shuffle=False, drop_last=False)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"① 模型　{origin}\n② 文本　{path}　训练 {len(train_loader)} 批，验证 {len(val_loader)} 批，每个样本 {t} 个词元")

    # ③ 各量一次
    torch.manual_seed(123)
    with torch.no_grad():
        train_loss = calc_loss_loader(train_loader, model, CPU, num_batches=2 if args.quick else None)
        val_loss = calc_loss_loader(val_loader, model, CPU)
    gap = val_loss - train_loss
    print(f"③ 训练损失 {train_loss:.4f}　验证损失 {val_loss:.4f}　差 {gap:+.4f}　困惑度 {math.exp(train_loss):,.0f} / {math.exp(val_loss):,.0f}")
    if gap > 1:
        print("   验证损失高得多：模型在背训练集（过拟合）")
    else:
        print("   两个差不多：看不出它背过其中一部分；但两部分都见过的话，也是这样")
    if kind == "自己训练的":
        print("   （OpenAI 的 124M 在 the-verdict.txt 上是 3.7547 / 3.5596，先下载：python setup/download.py gpt2-124M）")

    print("\n这个数字对吗？")
    # 不用 cross_entropy，照 5.1.2 节一步步算一遍：目标的概率 → 取对数 → 平均 → 取负。
    inputs, targets = next(iter(val_loader))
    with torch.no_grad():
        log_probas = torch.log_softmax(model(inputs), dim=-1)  # (b, t, V)
        by_hand = -log_probas.gather(-1, targets.unsqueeze(-1)).mean().item()
        by_function = calc_loss_batch(inputs, targets, model, CPU).item()
    confirm(f"照定义一步步算，验证集第一批也是 {by_function:.4f}", abs(by_hand - by_function) < 1e-3, "目标没有右移一位，或漏了取负")
    if kind == "自己训练的" or path.name != "the-verdict.txt" or args.quick:
        return
    size = args.size or "124M"
    if weights.stat().st_size == 548_105_171:  # OpenAI 的 124M 正好是这么多字节；别人的权重，不与原书比
        same = max(abs(train_loss - BOOK[size][0]), abs(val_loss - BOOK[size][1])) < 2e-3
        confirm(f"与原书相同：{BOOK[size][0]} / {BOOK[size][1]}", same, "权重装错了地方，或样本的长度不是 256")
    elif size in BOOK:
        print(f"  原书用 OpenAI 的 {size} 量到 {BOOK[size][0]} / {BOOK[size][1]}")


if __name__ == "__main__":
    main()
