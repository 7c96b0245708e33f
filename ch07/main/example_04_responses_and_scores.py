"""第 7 章 · 7.7–7.8 节　截出回答，存下来，打分

读完你应该能回答：
    1. 生成的文本里，哪一段才是回答？为什么按字符数切，而不是找 "### Response:"？
    2. 一字不差地比，冤枉了哪些回答？抹平大小写和标点，又放过了什么？
    3. 什么样的题能自动打分，什么样的题只能请裁判？

运行（先运行 python ch07/main/gpt_instruction_finetuning.py，这里就用你微调好的模型）：
    python ch07/main/example_04_responses_and_scores.py
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    mini 约 5 秒，0.4 GB（2 核 CPU）；回答写到 ch07/outputs/responses-example.json

形状记号（全书统一）：b 批大小　t 序列长度（token 数）　d 嵌入维度　h 头数　k 每个头的维度（k = d / h）　V 词表大小
"""

import json
import os
import re
import sys
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
import tiktoken
import torch
import torch.nn as nn
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

URL = "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/ch07/01_main-chapter-code/instruction-data.json"


# region 沿用 ch07/main/gpt_instruction_finetuning.py: download_and_load_file, format_input, split_data, generate_response, normalize, score_responses, write_json, print_table
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


def split_data(data):
    """按文件里的次序切成训练、测试、验证三份：85%、10%、5%。不打乱，所以数据在文件里就应当是乱序的。（详解见 ch07/main/gpt_instruction_finetuning.py）"""
    train_portion = int(len(data) * 0.85)
    test_portion = int(len(data) * 0.1)
    train_data = data[:train_portion]
    test_data = data[train_portion : train_portion + test_portion]
    val_data = data[train_portion + test_portion :]
    return train_data, val_data, test_data


def generate_response(model, tokenizer, entry, device, max_new_tokens=256, header=""):
    """让模型回答一条指令，截出回答。（详解见 ch07/main/gpt_instruction_finetuning.py）"""
    input_text = format_input(entry) + header
    token_ids = generate(
        model,
        text_to_token_ids(input_text, tokenizer).to(device),
        max_new_tokens=max_new_tokens,
        context_size=model.pos_emb.weight.shape[0],
        eos_id=50256,
    )
    generated_text = token_ids_to_text(token_ids, tokenizer)
    return generated_text[len(input_text) :].replace("### Response:", "").strip()


def normalize(text):
    """比较之前抹平无关紧要的差别：大小写、标点、空白。（详解见 ch07/main/gpt_instruction_finetuning.py）"""
    return " ".join(re.sub(r"[^\w\s-]", " ", text.lower()).split())


def score_responses(test_data, train_data):
    """不用裁判，直接与参考答案比：一字不差的有几条，抹平标点大小写之后相同的有几条。（详解见 ch07/main/gpt_instruction_finetuning.py）"""

    def fact(entry):
        return entry.get("rule"), entry.get("item", normalize(entry["output"]))
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


def write_json(path, data):
    """写 JSON：先写临时文件，写完整了再改名。（详解见 ch07/main/gpt_instruction_finetuning.py）"""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(data, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, path)


def print_table(table):
    """按规则印得分：训练时问过的事实（换了一种问法），和没问过的，分开数。（详解见 ch07/main/gpt_instruction_finetuning.py）"""
    print("　　　规则　　　　 问过的事实，新的问法　　没问过的事实")
    for rule in sorted({rule for rule, _ in table}):
        cells = [f"{table[rule, seen][0]:3} / {table[rule, seen][1]:<3}" if (rule, seen) in table else "   —     " for seen in (True, False)]
        print(f"　　　{rule:<16}{cells[0]:>12}{cells[1]:>18}")
    totals = [[sum(table[key][part] for key in table if key[1] is seen) for part in (0, 1)] for seen in (True, False)]
    print(f"　　　{'合计':<14}" + f"{totals[0][0]:5} / {totals[0][1]:<3}" + f"{totals[1][0]:12} / {totals[1][1]:<3}")


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


# region 沿用 ch05/main/gpt_train.py: text_to_token_ids, token_ids_to_text
def text_to_token_ids(text, tokenizer):
    """文本 → 模型的输入。（详解见 ch05/main/gpt_train.py）"""
    encoded = tokenizer.encode(text, allowed_special={"<|endoftext|>"})
    return torch.tensor(encoded).unsqueeze(0)  # (1, t)


def token_ids_to_text(token_ids, tokenizer):
    """模型的输出 → 文本。（详解见 ch05/main/gpt_train.py）"""
    return tokenizer.decode(token_ids.squeeze(0).tolist())


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
CHAPTER = Path(globals().get("__file__", "notebook.ipynb")).resolve().parent.parent
OUTPUTS = CHAPTER / "outputs"

# %% 7.7.0　用哪个模型、哪份数据
# 微调好的模型可能不止一个（mini、355M……），用最新的；一个都没有，就用没微调过的 mini，看看差在哪里。
finetuned = sorted(OUTPUTS.glob("*-sft.pth"), key=lambda path: path.stat().st_mtime)
source = finetuned[-1] if finetuned else CHAPTER.parent / "ch05" / "outputs" / "gpt_mini.pth"
# 数据要与微调时的同一份：测试集是按文件里的次序切出来的，换一份数据，"没见过的题"就可能是练过的。
try:
    path = find_data("instruction-data.json", "instructions.json")
    train_data, val_data, test_data = split_data(download_and_load_file(path, URL))
    model, config, _ = load_model(source)
except (ValueError, OSError) as error:
    sys.exit(f"出错了：{error}")
device = torch.device("cpu")
model.to(device).eval()  # 关掉 dropout：同一道题每次都答得一样，分数才有意义
tokenizer = tiktoken.get_encoding("gpt2")
header = "\n\n### Response:\n" if config["emb_dim"] < 768 else ""  # mini 训练时标题不算损失，它写不出标题，要替它写上；书上不给
print(f"【7.7】数据　{path}，测试 {len(test_data)} 条\n【7.7】模型　{source}" + ("" if finetuned else "　还没微调过：先运行 python ch07/main/gpt_instruction_finetuning.py"))

# %% 7.7.1　截出回答，一步一步
# generate 返回的是"提示词 + 新写的"，一起解码成文字；要的只是回答，所以分三步：看全文、切提示词、去标题。
entry = test_data[0]
# 提示词到 "### Input:" 那一段为止，书上没有写 "### Response:"：标题由模型自己接出来，训练时它每次都跟在后面。
input_text = format_input(entry) + header
token_ids = generate(
    model=model,
    idx=text_to_token_ids(input_text, tokenizer).to(device),
    max_new_tokens=40,
    context_size=config["context_length"],
    eos_id=50256,  # 写出结束词元就停；书上 GPT-2 的样本在 <|endoftext|> 之后还编了一条新指令，就是因为没有停
)
generated_text = token_ids_to_text(token_ids, tokenizer)
print(f"\n【7.7】① 生成的全文，前 {len(input_text)} 个字符是提示词，之后是新写的：\n{generated_text!r}")
print(f"【7.7】② 切掉提示词：\n{generated_text[len(input_text) :]!r}")
response_text = generated_text[len(input_text) :].replace("### Response:", "").strip()
print(f"【7.7】③ 去掉标题和两头的空白：\n{response_text!r}")
# 按字符数切，是因为提示词里也可能写着 "### Response:"，按记号找会找错地方。它靠的是"编码再解码，一字不变"：BPE 保证这一点。

# %% 7.7.2　三条测试题
# 看数字之前先看人话：三条就看得出它是会答、会抄，还是在说胡话。测试集的题训练时没有见过，答对才算数。
print()
for entry in test_data[:3]:
    response_text = generate_response(model, tokenizer, entry, device, 40, header)
    print(format_input(entry))  # 与原书印的格式相同
    print(f"\nCorrect response（参考答案）:\n>> {entry['output']}")
    print(f"\nModel response（模型回答）:\n>> {response_text}\n-------------------------------------")

# %% 7.7.3　全部回答，存成 JSON
# 存下来，打分就不必再生成一遍：生成是最慢的一步，而打分的办法会换好几种。这里只做前 20 条，全部的由微调脚本做。
answered = [entry | {"model_response": generate_response(model, tokenizer, entry, device, 40, header)} for entry in test_data[:20]]
OUTPUTS.mkdir(exist_ok=True)  # 先写临时文件再改名：写到一半断电，旧的还在
write_json(OUTPUTS / "responses-example.json", answered)
print(f"【7.7】前 {len(answered)} 条的回答写到 {OUTPUTS / 'responses-example.json'}，第一条：\n{answered[0]}")

# %% 7.8.1　打分，办法一：与参考答案比
# 最便宜，也最严：一个标点不同就算错。所以再放宽一步，抹平大小写、标点和空白（normalize）之后再比。
# 按规则分开数，还要分清"事实训练时问过、换了问法"和"没有问过"：前者考记性，后者才考会不会。
exact, correct, table = score_responses(answered, train_data)
print(f"\n【7.8】一字不差 {exact} / {len(answered)}；抹平大小写和标点之后 {correct} / {len(answered)}")
print_table(table)
for one, other in [("The plural of cat is cats.", "the plural of cat is cats"), ("The plural of cat is cats.", "Cats."), ("h-o-t", "h o t")]:
    print(f"  {one!r:<32}{other!r:<30}{'抹平之后相同' if normalize(one) == normalize(other) else '抹平之后还是不同'}")
# 第二行冤枉了：Cats. 也答对了，只是没有说成整句。所以这个办法只适合答案唯一、说法固定的题：自带的数据答案都只有一个词，就是为此。

# %% 7.8.2　同样的办法，给书上的模型打分
# 原书公开了 355M 微调之后的 110 条回答。一字不差的有多少，看得出这个办法在真实的数据上有多严。
try:
    book = download_and_load_file(find_data("instruction-data-with-response.json"), URL, keys=("instruction", "input", "output", "model_response"))
    book_exact, book_same, _ = score_responses(book, [])
    print(f"\n【7.8】书上的 355M：{len(book)} 条里一字不差 {book_exact}，抹平之后相同 {book_same}")
    for entry in [entry for entry in book if entry["model_response"] != entry["output"]][:3]:
        print(f"  参考　{entry['output']}\n  回答　{entry['model_response']}")
    # 同一批回答，请 Llama 3 打分是 50 分上下。"The car is as fast as a bullet." 与参考答案的 lightning 不同，却是好答案。
except (ValueError, OSError):
    book_exact = None  # 没有文件就不核对，不编一个数
    print("\n【7.8】没有原书的 instruction-data-with-response.json，跳过；它在原书仓库的 ch07/01_main-chapter-code/")

# %% 7.8.3　打分，办法二：请另一个模型当裁判
# 没有标准答案的题（"写一句比喻"），只能请人或请模型看。给裁判看的是这样一段话：
# 三样缺一不可：没有题目，裁判不知道在答什么；没有参考答案，它只能凭自己的学问，而它也会错。
# 即便如此，裁判偏爱长的、客气的、像它自己写的回答：分数只能用来比高低，不能当真理。
entry = answered[0]
prompt = (
    f"Given the input `{format_input(entry)}` "
    f"and correct output `{entry['output']}`, "
    f"score the model response `{entry['model_response']}`"
    f" on a scale from 0 to 100, where 100 is the best score. "
    f"Respond with the integer number only."
)
print(f"\n【7.8】给裁判的问题\n{prompt}")
print(f"【7.8】装好 Ollama 之后：python ch07/main/ollama_evaluate.py --file-path {OUTPUTS / 'responses-example.json'}")

# %% 这个数字对吗？
print("\n这个数字对吗？")
# 打分的代码错了，分数照样印得出来，还常常更好看；所以先查截取和存取，再信分数。
saved = json.loads((OUTPUTS / "responses-example.json").read_text(encoding="utf-8"))
confirm("存下来再读回来，一字不变", saved == answered, "写文件时没有用 UTF-8")
confirm("提示词编码再解码，一字不变", all(tokenizer.decode(tokenizer.encode(format_input(entry))) == format_input(entry) for entry in test_data), "按字符数切会切错地方")
confirm("回答里没有提示词，也没有标题", not any("### Response:" in entry["model_response"] or entry["model_response"].startswith("Below is") for entry in answered), "切的位置不对")
confirm("一字不差的，抹平之后一定也相同", exact <= correct, "两边抹平的办法不同")
if book_exact is not None and len(book) == 110:
    confirm("书上 355M 的前三条回答都与参考答案说法不同或相同得有道理，见上", book[0]["model_response"] == "The car is as fast as a bullet.", "不是原书的文件")

# %% 动手改
# 1. 把 eos_id=50256 去掉，看它答完之后又写了什么。
# 2. 把 normalize 里的 \w\s- 改成 \w\s（连字符也抹掉），h-o-t 和 h o t 就算相同了：这样好不好？
# 3. 用微调前的模型再跑一次（把 source 改成 ch05 的 gpt_mini.pth），看三条回答差在哪里。
