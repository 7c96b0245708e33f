"""第 6 章 · 6.6 节　分类的损失和准确率，以及最后一个词元看到了什么

读完你应该能回答：
    1. 为什么取最后一个位置的分数？取第一个会怎样？
    2. 还没微调，准确率为什么是一半左右？
    3. 我们要的是准确率，为什么训练时不直接优化它？

运行：
    python ch06/main/example_04_loss_and_accuracy.py        # 图片写到 ch06/outputs/
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    mini 约 5 秒，0.6 GB；124M 约 100 秒，1.7 GB（2 核 CPU）

有 124M 的权重就用它；没有就用 ch05 训练的 mini；都没有也能跑，权重是随机的。

形状记号（全书统一）：
    b 批大小　t 序列长度（token 数）　d 嵌入维度　h 头数　k 每个头的维度（k = d / h）　V 词表大小　n 样本数
"""

import csv
import io
import os
import re
import subprocess
import sys
import warnings
from itertools import islice
from pathlib import Path

import matplotlib.pyplot as plt
import zhplot  # noqa: F401　导入它，图上就能写中文
import numpy as np
import tiktoken
import torch
import torch.nn as nn
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset

LABELS = {"ham": 0, "spam": 1}


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


# region 沿用 ch05/main/gpt_train.py: calc_loss_loader
def calc_loss_loader(data_loader, model, device, num_batches=None):
    """一个数据集的平均损失。（详解见 ch05/main/gpt_train.py）"""
    losses = [calc_loss_batch(inputs, targets, model, device).item() for inputs, targets in islice(data_loader, num_batches)]
    return sum(losses) / len(losses) if losses else float("nan")


# endregion


# region 沿用 ch06/main/gpt_class_finetune.py: choose_start, load_messages, create_balanced_dataset, random_split, SpamDataset, add_classification_head, calc_accuracy_loader, calc_loss_batch
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


def load_messages(path):
    """读短信：每行「标签<制表符>正文」。（详解见 ch06/main/gpt_class_finetune.py）"""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter="\t")
    rows, problems, start = [], [], 1
    try:
        for row in reader:
            if len(row) == 2 and row[0] in LABELS and row[1].strip():
                rows.append((row[0], row[1]))
            elif row:
                wrong = "没有制表符" if len(row) == 1 else "制表符不止一个" if len(row) > 2 else "正文是空的" if row[0] in LABELS else f"标签 {row[0]!r} 不是 ham 或 spam"
                problems.append(f"第 {start} 行{wrong}")
            start = reader.line_num + 1
    except csv.Error:
        problems.append(f"第 {start} 行的引号没有配对")
    if problems:
        more = f"……共 {len(problems)} 处" if len(problems) > 3 else ""
        raise ValueError(f"{path} 的格式不对：{'；'.join(problems[:3])}{more}。每行应是「ham 或 spam<制表符>正文」")
    return rows


def create_balanced_dataset(rows):
    """让两类一样多：多的那一类随机抽，少的那一类全要。（详解见 ch06/main/gpt_class_finetune.py）"""
    ham = [row for row in rows if row[0] == "ham"]
    spam = [row for row in rows if row[0] == "spam"]
    if not ham or not spam:
        raise ValueError(f"数据里只有 {len(ham)} 条 ham、{len(spam)} 条 spam，两类都要有才能学着分辨")
    n = min(len(ham), len(spam))
    shuffled = np.random.RandomState(123).permutation(len(ham))
    return [ham[i] for i in shuffled[:n]] + spam[:n]


def random_split(rows, train_frac, validation_frac):
    """打乱，再切成训练集、验证集、测试集。（详解见 ch06/main/gpt_class_finetune.py）"""
    rows = [rows[i] for i in np.random.RandomState(123).permutation(len(rows))]
    train_end = int(len(rows) * train_frac)
    validation_end = train_end + int(len(rows) * validation_frac)
    return rows[:train_end], rows[train_end:validation_end], rows[validation_end:]


class SpamDataset(Dataset):
    """短信的数据集：先分好词，再一律填充到同样长。（详解见 ch06/main/gpt_class_finetune.py）"""

    def __init__(self, rows, tokenizer, max_length=None, pad_token_id=50256):
        self.labels = [LABELS[label] for label, _ in rows]
        self.encoded_texts = [tokenizer.encode(text, disallowed_special=()) for _, text in rows]
        if max_length is None:
            self.max_length = self._longest_encoded_length()
        else:
            self.max_length = max_length
            self.encoded_texts = [encoded_text[: self.max_length] for encoded_text in self.encoded_texts]
        self.encoded_texts = [encoded_text + [pad_token_id] * (self.max_length - len(encoded_text)) for encoded_text in self.encoded_texts]

    def __getitem__(self, index):
        return torch.tensor(self.encoded_texts[index], dtype=torch.long), torch.tensor(self.labels[index], dtype=torch.long)

    def __len__(self):
        return len(self.labels)

    def _longest_encoded_length(self):
        return max(len(encoded_text) for encoded_text in self.encoded_texts)


def add_classification_head(model, num_classes=2, trainable="last_block", seed=123):
    """把语言模型改成分类器：换掉输出层，决定哪些层参加训练。（详解见 ch06/main/gpt_class_finetune.py）"""
    for param in model.parameters():
        param.requires_grad = trainable == "all"
    torch.manual_seed(seed)
    model.out_head = nn.Linear(model.out_head.in_features, num_classes)
    for part in (model.trf_blocks[-1], model.final_norm):
        for param in part.parameters():
            param.requires_grad = True


def calc_accuracy_loader(data_loader, model, device, num_batches=None):
    """准确率（accuracy）：答对的比例。（详解见 ch06/main/gpt_class_finetune.py）"""
    model.eval()
    correct_predictions, num_examples = 0, 0
    for input_batch, target_batch in islice(data_loader, num_batches):
        input_batch, target_batch = input_batch.to(device), target_batch.to(device)
        with torch.no_grad():
            logits = model(input_batch)[:, -1, :]  # (b, 2)
        predicted_labels = torch.argmax(logits, dim=-1)  # (b,)
        num_examples += predicted_labels.shape[0]
        correct_predictions += (predicted_labels == target_batch).sum().item()
    return correct_predictions / num_examples if num_examples else float("nan")


def calc_loss_batch(input_batch, target_batch, model, device):
    """一批的损失：一条短信就是一道选择题，只用最后一个位置的分数作答。（详解见 ch06/main/gpt_class_finetune.py）"""
    input_batch, target_batch = input_batch.to(device), target_batch.to(device)
    logits = model(input_batch)[:, -1, :]  # (b, 2)
    return nn.functional.cross_entropy(logits, target_batch)


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
OUTPUTS = Path(globals().get("__file__", "notebook.ipynb")).resolve().parent.parent / "outputs"

# %% 6.6.0　接着前几节：数据加载器，换了输出层的模型
path = find_data("SMSSpamCollection.tsv", "messages.tsv")
train_rows, val_rows, test_rows = random_split(create_balanced_dataset(load_messages(path)), 0.7, 0.1)
tokenizer = tiktoken.get_encoding("gpt2")
train_dataset = SpamDataset(train_rows, tokenizer)
val_dataset, test_dataset = (SpamDataset(part, tokenizer, max_length=train_dataset.max_length) for part in (val_rows, test_rows))
torch.manual_seed(123)
train_loader = DataLoader(train_dataset, batch_size=8, shuffle=True, num_workers=0, drop_last=True)
val_loader = DataLoader(val_dataset, batch_size=8, num_workers=0, drop_last=False)
test_loader = DataLoader(test_dataset, batch_size=8, num_workers=0, drop_last=False)

# 配置是权重的一部分：没有现成的权重时，就按 gpt_train.py 里 mini 的样子建一个随机的。
config = BASE_CONFIG | SIZES["mini"] | {"context_length": 256, "qkv_bias": False}
torch.manual_seed(123)
model, used, start = GPTModel(config), "随机的权重（先运行 python ch05/main/gpt_train.py，这里就换成训练过的）", None
try:
    start = choose_start(None, None, quick=True)
    if start:
        model, config, _ = load_model(start)
        used = start
except (ValueError, OSError) as error:  # 文件坏了，或内存不够
    print(f"{error}；改用随机的权重")
    start = None
add_classification_head(model, num_classes=2, seed=123)  # 6.5 节的几步合成一个函数：冻结、换输出层、解冻最后一块
model.eval()  # 关掉 dropout，同样的输入才有同样的输出
device = torch.device("cpu")
official = start is not None and start.stat().st_size == 548_105_171
print(f"【6.6】数据　{path}\n【6.6】权重　{used}")

# %% 6.6.1　最后一个词元看到了什么
# 同一句话，只改第一个词或最后一个词，看哪些位置的输出会变。
sentences = ["Do you have time", "Can you have time", "Do you have money"]
ids = [tokenizer.encode(sentence) for sentence in sentences]  # 每句都是 4 个词元，才能逐个位置比较
with torch.no_grad():
    outputs = model(torch.tensor(ids))  # (b, t, 2) = (3, 4, 2)
print("\n【6.6】每个位置的输出，与原句差多少")
change = (outputs - outputs[0]).abs().amax(dim=-1)  # (b, t)
for sentence, row in zip(sentences[1:], change[1:]):
    print(f"  {sentence:<20}" + "　".join(f"位置 {i + 1}：{value:.3f}" for i, value in enumerate(row.tolist())))
# 改第一个词，四个位置全变；改最后一个词，只有最后的位置变。因果掩码让每个位置只看得见自己和左边：
# 第一个位置永远只看过第一个词，无论后面写的是什么；只有最后一个位置读完了全部。所以用它作答（取第一个会怎样，见练习 6.3）。

# %% 6.6.2　分数 → 概率 → 类别
logits = outputs[0, -1, :]  # (2,)
probas = torch.softmax(logits, dim=-1)  # (2,)
print(f"\n【6.6】分数 {logits.tolist()} → 概率 {probas.tolist()} → 类别 {torch.argmax(probas).item()}")
# softmax 不改变谁大谁小，只要类别的话，直接对分数取 argmax 就行。

# %% 6.6.3　微调前的准确率
torch.manual_seed(123)  # 训练集每次都重新打乱，只看前 10 批的话，看到哪 80 条由种子决定
accuracy = [calc_accuracy_loader(loader, model, device, num_batches=10) for loader in (train_loader, val_loader, test_loader)]
print("\n【6.6】微调前的准确率（各看 10 批）　训练 {:.2%}　验证 {:.2%}　测试 {:.2%}".format(*accuracy))
# calc_accuracy_loader：每条取最后一个位置的分数，argmax 得到类别，与标签相同就算答对，最后除以条数。
# 输出层刚刚随机生成，与内容无关。两类各一半，所以总在 50% 上下；没有平衡过的数据，这个数就说明不了什么。
torch.manual_seed(123)
always = []
for loader in (train_loader, val_loader, test_loader):
    labels = torch.cat([target_batch for _, target_batch in islice(loader, 10)])  # (n,)
    always.append(labels.float().mean().item())  # spam 是 1，平均就是 spam 占的比例
print("【6.6】同样这 10 批，一律答 spam 的准确率　训练 {:.2%}　验证 {:.2%}　测试 {:.2%}".format(*always))
# 书上印的微调前的准确率，正好就是一律答 spam 的得分：没微调过的分类器不是在抛硬币，它无论看到什么都答同一类。

# %% 6.6.4　微调前的损失
# calc_loss_batch 与预训练时只差一处：那里每个位置一道题，(b·t, V) 对 (b·t,)；这里一条短信一道题，(b, 2) 对 (b,)。
with torch.no_grad():  # 只看不训练，不必记计算图
    loss = [calc_loss_loader(loader, model, device, num_batches=5) for loader in (train_loader, val_loader, test_loader)]
print("【6.6】微调前的损失（各看 5 批）　　　训练 {:.3f}　验证 {:.3f}　测试 {:.3f}".format(*loss))
# 两类各猜 50%，损失是 ln 2 = 0.693。比它大得多，说明模型猜错了还很有把握：124M 的输出向量很长，随机的输出层一乘，分数就悬殊。

# %% 6.6.5　为什么不直接优化准确率
# 一条垃圾短信，分数之差从 −4 走到 4：准确率在 0 处跳一下，别处都是平的，梯度处处为 0，不知道往哪边走；
# 交叉熵是一条光滑的坡，错得越有把握越陡，答对了也还有一点坡度。
gap = torch.linspace(-4, 4, 401, requires_grad=True)  # (n,)　"垃圾"的分数减去"正常"的分数
pair = torch.stack([torch.zeros_like(gap), gap], dim=1)  # (n, 2)
curve = nn.functional.cross_entropy(pair, torch.ones(len(gap), dtype=torch.long), reduction="none")  # (n,)
curve.sum().backward()
wrong = (gap <= 0).float()  # (n,)　答错为 1
print(f"\n【6.6】分数之差 −4、0、4 处，交叉熵 {curve[0]:.3f}、{curve[200]:.3f}、{curve[400]:.3f}，坡度 {gap.grad[0]:.3f}、{gap.grad[200]:.3f}、{gap.grad[400]:.3f}")

figure, axis = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
axis.plot(gap.detach(), curve.detach(), label="交叉熵：处处有坡度")
axis.plot(gap.detach(), wrong, linestyle="-.", label="答错（1 − 准确率）：坡度是 0")
axis.axvline(0, color="gray", linewidth=0.8)
axis.text(-3.9, 0.15, "← 判成正常（错）")
axis.text(1.9, 1.15, "判成垃圾（对）→")
axis.set_xlabel("垃圾的分数 − 正常的分数")
axis.set_title("一条垃圾短信的损失")
axis.legend()
OUTPUTS.mkdir(exist_ok=True)
picture = OUTPUTS / "loss_and_accuracy.png"
figure.savefig(picture, dpi=150)
plt.close(figure)
print(f"【6.6】图片　{picture}")

# %% 这个数字对吗？
print("\n这个数字对吗？")
confirm("改最后一个词，前三个位置的输出一点没变", change[2, :3].max() < 1e-6 < change[2, 3], "因果掩码没有生效")
confirm("改第一个词，每个位置都变了", change[1].min() > 0, "残差连接断了")
confirm("分数相等时，交叉熵是 ln 2 = 0.693", abs(curve[200] - 0.6931) < 1e-4, "分数的次序反了")
confirm("两个类别的概率加起来是 1", abs(probas.sum() - 1) < 1e-6, "softmax 的 dim 不是最后一维")
if path.stat().st_size == 477_907:  # 大小与原书的那份相同，才核对书上的数
    confirm("一律答 spam，正是书上的 46.25% / 45.00% / 48.75%", np.allclose(always, [0.4625, 0.45, 0.4875], atol=1e-4), "抽到的不是同样的 10 批")
if official and path.stat().st_size == 477_907:
    confirm("与书上相同：46.25% / 45.00% / 48.75%", np.allclose(accuracy, [0.4625, 0.45, 0.4875], atol=1e-4), "新输出层的种子不是 123，或权重装错了")
    confirm("与书上相同：2.453 / 2.583 / 2.322", np.allclose(loss, [2.453, 2.583, 2.322], atol=2e-3), "损失之前多用了随机数")
else:
    print("  （装上 124M 的权重、用原书的数据，这里还会核对书上的数：准确率 46.25% / 45.00% / 48.75%，损失 2.453 / 2.583 / 2.322）")

# %% 动手改
# 1. 把 6.6.1 的第二句换成 "Do we have time"，只改第二个词：哪几个位置会变？（第二条自查会变成 ✗）
# 2. 把 add_classification_head 的 seed 换成 1、2、3：微调前的准确率在什么范围里晃？
# 3. 把 6.6.5 的 torch.ones 改成 torch.zeros（答案换成"正常"）：曲线会左右翻转。
