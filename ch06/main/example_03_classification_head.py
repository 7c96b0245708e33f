"""第 6 章 · 6.4–6.5 节　换掉输出层：从"接下一个词元"到"是不是垃圾短信"

读完你应该能回答：
    1. 没有微调过的语言模型，直接问它"这是不是垃圾短信"，会怎样？
    2. 换掉输出层，删了多少参数，加了多少？为什么只输出 2 个数，而不是 1 个？
    3. 冻结大部分层，留下最后一块：为什么是最后，而不是最前？

运行：
    python ch06/main/example_03_classification_head.py
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    mini 约 3 秒，0.5 GB；124M 约 10 秒，1.6 GB（2 核 CPU）

有 124M 的权重（python setup/download.py gpt2-124M）就用它，数字与书上相同；没有就用 ch05 训练的 mini；都没有也能跑，权重是随机的。

形状记号（全书统一）：
    b 批大小　t 序列长度（token 数）　d 嵌入维度　h 头数　k 每个头的维度（k = d / h）　V 词表大小
"""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import tiktoken
import torch
import torch.nn as nn
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file


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


# region 沿用 ch04/main: LayerNorm, GELU, FeedForward, TransformerBlock, GPTModel, generate_text_simple
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


# region 沿用 ch05/main/gpt_train.py: text_to_token_ids, token_ids_to_text
def text_to_token_ids(text, tokenizer):
    """文本 → 模型的输入。（详解见 ch05/main/gpt_train.py）"""
    encoded = tokenizer.encode(text, allowed_special={"<|endoftext|>"})
    return torch.tensor(encoded).unsqueeze(0)  # (1, t)


def token_ids_to_text(token_ids, tokenizer):
    """模型的输出 → 文本。（详解见 ch05/main/gpt_train.py）"""
    return tokenizer.decode(token_ids.squeeze(0).tolist())


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

# %% 6.4.1　装上预训练的权重
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
model.eval()
tokenizer = tiktoken.get_encoding("gpt2")
official = start is not None and start.stat().st_size == 548_105_171  # OpenAI 的 124M，书上用的就是它
print(f"【6.4】{used}　{config['n_layers']} 层，{config['emb_dim']} 维")


# %% 6.4.2　先看它会不会接话：权重装对了没有
def complete(prompt, max_new_tokens):
    """贪心地接着写一段。

    参数:
        prompt (str): 提示词
        max_new_tokens (int): 写几个词元

    返回:
        str: 提示词连同接着写的
    """
    token_ids = generate_text_simple(model, text_to_token_ids(prompt, tokenizer), max_new_tokens, config["context_length"])
    return token_ids_to_text(token_ids, tokenizer)


effort = complete("Every effort moves you", 15)
print(f"\n【6.4】{effort!r}")

# %% 6.4.3　直接问它：这是不是垃圾短信？
question = (
    "Is the following text 'spam'? Answer with 'yes' or 'no':"
    " 'You are a winner you have been specially"
    " selected to receive $1000 cash or a $2000 award.'"
)
answer = complete(question, 23)
print(f"【6.4】{answer[len(question) :]!r}")
# 124M 也答不上来，只会把题目再说一遍：预训练只教它接着写，没有教它听话。教它听话是第 7 章的指令微调；
# 如果只要"是或否"，有更省的办法：不让它说话，直接把输出层换成两个数。

# %% 6.5.1　先冻结全部参数
num_before = sum(p.numel() for p in model.parameters())
for param in model.parameters():
    param.requires_grad = False  # 不求梯度，优化器就不会动它

# %% 6.5.2　换掉输出层：V 个分数 → 2 个分数
old = model.out_head
torch.manual_seed(123)
num_classes = 2
model.out_head = nn.Linear(in_features=config["emb_dim"], out_features=num_classes)  # 新建的层，默认就参加训练
print(f"\n【6.5】输出层　{tuple(old.weight.shape)}　(V, d) → {tuple(model.out_head.weight.shape)}　(2, d)，另加 2 个偏置")
# 是与否，一个数也够（大于 0 算垃圾）。用 2 个，是因为交叉熵、argmax 都能原样照用，要分三类、十类，只改这个数。

# %% 6.5.3　解冻最后一块和最后的归一化
# 前面的层学到的是词与词怎样搭配，什么任务都用得着；越靠后越接近"预测下一个词元"这件具体的事，换了题目，最该改的是它们。
for part in (model.trf_blocks[-1], model.final_norm):
    for param in part.parameters():
        param.requires_grad = True
num_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
num_total = sum(p.numel() for p in model.parameters())
for name, module in [("词嵌入、位置嵌入", [model.tok_emb, model.pos_emb]), ("前面的 Transformer 块", model.trf_blocks[:-1]), ("最后一块", [model.trf_blocks[-1]]),
                     ("最后的归一化", [model.final_norm]), ("输出层", [model.out_head])]:  # fmt: skip
    params = [p for part in module for p in part.parameters()]
    print(f"  {sum(p.numel() for p in params):>12,} 个参数　{'训练' if params[0].requires_grad else '冻结'}　{name}")
print(f"【6.5】参加训练 {num_trainable:,} 个，占 {num_trainable / num_total:.1%}")

# %% 6.5.4　看看输出
inputs = torch.tensor(tokenizer.encode("Do you have time")).unsqueeze(0)  # (b, t) = (1, 4)
print(f"\n【6.5】输入　{inputs.tolist()}　{tuple(inputs.shape)}　(b, t)")
with torch.no_grad():
    outputs = model(inputs)  # (b, t, 2) = (1, 4, 2)
print(f"【6.5】输出　{tuple(outputs.shape)}　(b, t, 2)：每个位置都给出两个分数\n{outputs}")
# 要判断的是整条短信，只要一个位置的分数。取最后一个：因果掩码下，只有它看过全部词元。下一个脚本用数字来证明。
print(f"【6.5】最后一个词元　{outputs[:, -1, :]}　(b, 2)")

# %% 这个数字对吗？
print("\n这个数字对吗？")
d = config["emb_dim"]
block = 12 * d * d + (10 + 3 * config["qkv_bias"]) * d  # Q、K、V 和 out_proj 4d²，前馈网络 8d²，其余是偏置和归一化
confirm(f"最后一块 + 归一化 + 输出层 = {block:,} + {2 * d:,} + {2 * d + 2:,} = {num_trainable:,}", num_trainable == block + 2 * d + 2 * d + 2, "解冻了别的层，或忘了解冻")
confirm("换输出层，少了 V·d − (2d + 2) 个参数", num_before - num_total == old.weight.numel() - (2 * d + 2), "out_head 换了两次")
confirm("4 个词元，每个位置 2 个分数", outputs.shape == (1, 4, 2), "输出层没有换上")
confirm("被冻结的层没有梯度可求：前向之后，只有新的层连着计算图", not model.tok_emb.weight.requires_grad and model.out_head.weight.requires_grad, "冻结写在了换输出层之后")
if official:
    book = "Every effort moves you forward.\n\nThe first step is to understand the importance of your work"
    confirm("接的话与书上相同：Every effort moves you forward.…", effort == book, "某个权重装错了地方")
    confirm("问它是不是垃圾短信，与书上一样，又说了一遍题目", "The following text 'spam'? Answer with 'yes' or 'no': 'You are a winner" in answer, "某个权重装错了地方")
    expected = torch.tensor([[[-1.5854, 0.9904], [-3.7235, 7.4548], [-2.2661, 6.6049], [-3.5983, 3.9902]]])
    confirm("参加训练的 7,090,946 个，输出与书上相同：最后一个词元 [-3.5983, 3.9902]", num_trainable == 7_090_946 and torch.allclose(outputs, expected, atol=2e-3), "新输出层的种子不是 123")
else:
    print("  （装上 124M 的权重，这里还会核对书上的数：最后一个词元是 [-3.5983, 3.9902]，参加训练 7,090,946 个参数）")

# %% 动手改
# 1. 把 num_classes 改成 3：哪些数变了？（三条自查会变成 ✗，想想为什么）
# 2. 把"换输出层"和"冻结"两格对调：out_head 也被冻结，它会一直是随机的。（第一、第四条自查会变成 ✗）
# 3. 把 6.5.3 的 model.trf_blocks[-1] 改成 model.trf_blocks[-2:]，解冻最后两块：参加训练的参数变成多少？（第一条自查会变成 ✗）
