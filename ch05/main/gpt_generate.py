"""第 5 章 · 5.3–5.5 节　解码策略，以及让真正的 GPT-2 说话

读完、敲完这个脚本，你应该能不看书回答：
    1. 贪心解码每次都选最可能的词元，为什么反而容易翻来覆去说同一句话？
    2. 温度（temperature）乘在哪里、除在哪里？top-k 挡住了什么？它们为什么常常一起用？
    3. OpenAI 的权重装进我们的 GPTModel：c_attn 为什么要切成三份，权重为什么要转置？

运行：
    python ch05/main/gpt_generate.py                                            # 贪心；先训练：python ch05/main/gpt_train.py
    python ch05/main/gpt_generate.py --temperature 1.4 --top-k 25               # 原书 5.3.3 节的设置
    python ch05/main/gpt_generate.py --prompt "I had always" --max-new-tokens 60
    python ch05/main/gpt_generate.py --size 124M --temperature 1.5 --top-k 50   # 原书 5.5 节；先下载：python setup/download.py gpt2-124M
    mini 约 3 秒，0.4 GB；124M 约 8 秒，1.5 GB，其中 0.5 GB 是文件的映射，内存紧时系统会收回（2 核 CPU）

形状记号（全书统一）：
    b 批大小　　t 序列长度（token 数）　　d 嵌入维度　　V 词表大小　　n_ctx 上下文长度
"""

import argparse
import os
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import tiktoken
import torch
import torch.nn as nn
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"

# OpenAI 训练的四种规模，结构相同，只是更宽、更深、头更多；每个头都是 64 维。
MODEL_CONFIGS = {
    "gpt2-small (124M)": {"emb_dim": 768, "n_layers": 12, "n_heads": 12},
    "gpt2-medium (355M)": {"emb_dim": 1024, "n_layers": 24, "n_heads": 16},
    "gpt2-large (774M)": {"emb_dim": 1280, "n_layers": 36, "n_heads": 20},
    "gpt2-xl (1558M)": {"emb_dim": 1600, "n_layers": 48, "n_heads": 25},
}
# 与第 4 章的配置差两处：OpenAI 训练时上下文是 1024，而且 Q、K、V 的投影带偏置。
# 配置是权重的一部分，差一处就装不进去，或者装进去了也说胡话。只生成、不训练，用不着 dropout。
BASE_CONFIG = {"vocab_size": 50257, "context_length": 1024, "drop_rate": 0.0, "qkv_bias": True}
SIZES = {"mini": {"emb_dim": 192, "n_layers": 4, "n_heads": 6}} | {name.split("(")[1][:-1]: sizes for name, sizes in MODEL_CONFIGS.items()}


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


def generate(model, idx, max_new_tokens, context_size, temperature=0.0, top_k=None, eos_id=None):
    """逐个生成词元，可以调温度、限制 top-k，遇到结束符就停。

    参数:
        model (nn.Module): 语言模型，(b, t) → (b, t, V)；应先调用 model.eval()
        idx (Tensor): 提示词的词元编号，(b, t)
        max_new_tokens (int): 最多再生成几个词元
        context_size (int): 模型一次最多看几个词元
        temperature (float): 0 表示贪心；小于 1 更保守，大于 1 更大胆
        top_k (int 或 None): 只在分数最高的 k 个里选；None 表示不限制
        eos_id (int 或 None): 结束符的编号，生成了它就停；None 表示不停

    形状:
        输入 (b, t) → 输出 (b, t + m)，m 是生成的个数

    返回:
        Tensor: 提示词连同新生成的词元

    异常:
        ValueError: temperature 为负，或 top_k 不在 1 到词表大小之间

    出处: 原书 5.3 节
    """
    if not temperature >= 0:  # 写成 not >=，连 nan 也挡住
        raise ValueError(f"温度不能是负数（{temperature}）：0 表示贪心，越大越随机")
    vocab_size = model.out_head.out_features
    if top_k is not None and not 1 <= top_k <= vocab_size:
        raise ValueError(f"top_k 应在 1 到 {vocab_size}（词表大小）之间，不能是 {top_k}；不想限制就不要给")

    for _ in range(max_new_tokens):
        idx_cond = idx[:, -context_size:]  # (b, t)
        with torch.no_grad():
            logits = model(idx_cond)[:, -1, :]  # (b, V)　只有最后一个位置是新问题

        # ① top-k：第 k 名以外的分数改成 -inf，softmax 之后概率正好是 0，再大的温度也轮不到它们。
        if top_k is not None:
            kth = torch.topk(logits, top_k).values[:, -1:]  # (b, 1)　第 k 名的分数
            logits = torch.where(logits < kth, -torch.inf, logits)  # (b, V)

        if temperature > 0.0:
            # ② 温度：除以大于 1 的数，分数的差距缩小，分布变平，冷门词元也有机会；除以小于 1 的数则相反。
            logits = logits / temperature
            # ③ 先减去最大值：softmax 的结果不变，但 e 的指数不会溢出（MPS 上尤其要紧）。
            logits = logits - logits.max(dim=-1, keepdim=True).values
            probs = torch.softmax(logits, dim=-1)  # (b, V)
            # ④ 按概率抽一个，而不是总选最大的：同一个提示词，每次可以写出不同的话。
            idx_next = torch.multinomial(probs, num_samples=1)  # (b, 1)
        else:
            idx_next = torch.argmax(logits, dim=-1, keepdim=True)  # (b, 1)

        if eos_id is not None and (idx_next == eos_id).all():
            break
        idx = torch.cat((idx, idx_next), dim=1)  # (b, t + 1)
    return idx


def assign(left, right):
    """把一个数组变成模型的参数；形状不同就报错。

    参数:
        left (nn.Parameter): 模型里原来的参数
        right (ndarray): 要换上的数

    形状:
        两者相同

    返回:
        nn.Parameter: 新的参数，与 left 在同一个设备上

    异常:
        ValueError: 形状不同，或模型里没有这个参数

    出处: 原书 5.5 节
    """
    if left is None:
        raise ValueError("模型里没有这个偏置：OpenAI 的权重带 Q、K、V 的偏置，建模型时要 qkv_bias=True")
    # 一定要检查：copy_ 之类会自动广播，形状错了也不吭声，模型只是莫名其妙地说胡话。
    if left.shape != right.shape:
        raise ValueError(f"形状不同：模型里是 {tuple(left.shape)}，权重是 {tuple(right.shape)}，多半是模型的配置与权重不是一种规模")
    return nn.Parameter(torch.tensor(right, dtype=left.dtype, device=left.device))


def load_weights_into_gpt(gpt, params):
    """把 OpenAI 的权重装进我们的 GPTModel：同样的零件，两边起的名字和摆法不同，逐个对上。

    参数:
        gpt (GPTModel): 模型，大小要与权重相同，qkv_bias=True
        params (dict): download_and_load_gpt2 读出来的权重

    异常:
        ValueError: 层数或形状不同

    出处: 原书 5.5 节
    """
    if len(gpt.trf_blocks) != len(params["blocks"]):
        raise ValueError(f"模型有 {len(gpt.trf_blocks)} 块，权重有 {len(params['blocks'])} 块，不是一种规模")
    gpt.tok_emb.weight = assign(gpt.tok_emb.weight, params["wte"])  # (V, d)
    gpt.pos_emb.weight = assign(gpt.pos_emb.weight, params["wpe"])  # (n_ctx, d)

    for block, block_params in zip(gpt.trf_blocks, params["blocks"]):
        attn, mlp = block_params["attn"], block_params["mlp"]
        # ① c_attn 是 Q、K、V 三个矩阵左右并排，OpenAI 一次大乘法算出三样；我们分成三层，所以沿最后一维切成三份，次序是 Q、K、V。
        weights = np.split(attn["c_attn"]["w"], 3, axis=-1)  # 三个 (d, d)
        biases = np.split(attn["c_attn"]["b"], 3, axis=-1)  # 三个 (d,)
        for linear, w, b in zip((block.att.W_query, block.att.W_key, block.att.W_value), weights, biases):
            # ② 转置：OpenAI 存的是（输入，输出），算 x @ w；nn.Linear 存的是（输出，输入），算 x @ weight.T。
            #    方阵尤其危险：忘了转置，形状照样对得上，不会报错。
            linear.weight = assign(linear.weight, w.T)  # (d, d)
            linear.bias = assign(linear.bias, b)  # (d,)
        # ③ 其余三个线性层一一对应：混合各头的 out_proj，前馈网络的升维和降维。
        for linear, part in [(block.att.out_proj, attn["c_proj"]), (block.ff.layers[0], mlp["c_fc"]), (block.ff.layers[2], mlp["c_proj"])]:
            linear.weight = assign(linear.weight, part["w"].T)
            linear.bias = assign(linear.bias, part["b"])
        # ④ 层归一化：g 是缩放，b 是平移。
        for norm, part in [(block.norm1, block_params["ln_1"]), (block.norm2, block_params["ln_2"])]:
            norm.scale = assign(norm.scale, part["g"])  # (d,)
            norm.shift = assign(norm.shift, part["b"])  # (d,)

    gpt.final_norm.scale = assign(gpt.final_norm.scale, params["g"])  # (d,)
    gpt.final_norm.shift = assign(gpt.final_norm.shift, params["b"])  # (d,)
    # ⑤ 权重共享：OpenAI 没有单独的输出层，拿词嵌入当输出层用。我们复制一份给 out_head，之后训练时两边各改各的。
    gpt.out_head.weight = assign(gpt.out_head.weight, params["wte"])  # (V, d)


def memory_needed(config):
    """估计模型占多少内存：不建模型，用公式数出参数，每个 4 字节。

    参数:
        config (dict): 模型配置

    返回:
        float: 单位 GB（2 的 30 次方字节）
    """
    d, n_layers, n_ctx = config["emb_dim"], config["n_layers"], config["context_length"]
    parameters = (2 * config["vocab_size"] + n_ctx) * d + n_layers * (12 * d * d + 13 * d) + 2 * d
    masks = n_layers * n_ctx * n_ctx  # 每块一个因果掩码，布尔值，每个 1 字节
    return (4 * parameters + masks) / 2**30


def check_memory(config):
    """建模型之前，看看这台机器装不装得下；不看的话，建到一半会被系统杀掉，什么提示也没有。

    参数:
        config (dict): 模型配置

    异常:
        ValueError: 装不下
    """
    memory, need = total_memory(), memory_needed(config) + 0.5  # 另外的 0.5 GB：Python、PyTorch 和激活值
    if memory is not None and need > memory:
        fit = [f"--size {size}" for size, sizes in SIZES.items() if memory_needed(BASE_CONFIG | sizes) + 0.5 <= memory]
        raise ValueError(f"这个模型约要 {need:.1f} GB 内存，这台机器只有 {memory:.1f} GB；装得下的有：{'、'.join(fit) or '没有'}")


def read_weights(path):
    """读一个权重文件，先不管它是哪一种。

    参数:
        path (Path): .pth 或 .safetensors

    返回:
        tuple[dict 或 None, dict]: 存着的配置（只有 gpt_train.py 的检查点有），和名字 → 张量

    异常:
        ValueError: 文件不存在、损坏，或不是权重
    """
    if not path.is_file():
        raise ValueError(f"找不到 {path}；要用自己训练的模型，请先运行 python ch05/main/gpt_train.py")
    try:
        with open(path, "rb") as file:
            is_safetensors = file.read(9)[8:] == b"{"  # 看内容，不看后缀：safetensors 的开头是 8 字节的长度，再是 JSON
        if is_safetensors:
            content = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # 遇到别人的文件，torch 会先用英文嘀咕几句
                # weights_only=True：只读数字，不执行文件里的代码；来路不明的 .pth 里可以夹带任意程序。
                # mmap=True：用到哪个张量才读哪个；检查点的三分之二是优化器的状态，这里用不着，就不会读。
                content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
        saved, state = content.get("config"), content.get("model", content.get("model_state_dict", content))
        # 掩码不是学到的参数，模型自己会建，类型还各不相同（原书是浮点数，本项目是布尔值），所以都不要。
        masks = ("att.mask", "attn.bias", "attn.masked_bias")
        state = {name.removeprefix("transformer."): tensor for name, tensor in state.items() if not name.endswith(masks)}
        usable = bool(state) and all(tensor.is_floating_point() for tensor in state.values())
    except Exception:  # 损坏的、别人的文件能引出各种异常，处理办法都一样
        usable = False
    if not usable:
        raise ValueError(f"{path} 读不出来：文件已损坏，或者不是 GPT 的检查点、权重")
    return saved, state


def load_model(path, size=None):
    """认出文件是哪一种，建好模型，装上权重。

    认得三种：gpt_train.py 的检查点；原书的状态字典，.pth 或 .safetensors；OpenAI 格式的权重，即 hub 上的 safetensors。

    参数:
        path (str 或 Path): 文件
        size (str 或 None): 应该是哪种规模，SIZES 的一项；None 表示都行

    返回:
        tuple[GPTModel, dict, str]: 模型、配置、文件的种类；配置里 drop_rate 是 0

    异常:
        ValueError: 文件认不出来、规模不对，或内存不够
    """
    path = Path(path)
    saved, state = read_weights(path)
    openai = saved is None and "wte.weight" in state
    kind = "OpenAI 格式的权重" if openai else "状态字典" if saved is None else "检查点"

    # ① 多大？词表、上下文、宽度、层数，数一数张量就知道。
    tok, pos, norm = ("wte.weight", "wpe.weight", "ln_1.weight") if openai else ("tok_emb.weight", "pos_emb.weight", "norm1.scale")
    layers = sum(name.endswith(norm) for name in state)
    if not {tok, pos} <= state.keys() or state[tok].dim() != 2 or state[pos].dim() != 2 or layers == 0:
        raise ValueError(f"{path} 不是 GPT 的权重（第一项叫 {min(state)}）")
    (vocab_size, width), n_ctx = state[tok].shape, state[pos].shape[0]
    found = next((name for name, sizes in SIZES.items() if (sizes["emb_dim"], sizes["n_layers"]) == (width, layers)), None)
    if size and found != size:
        raise ValueError(f"{path} 是 {found or '别的规模'}（{layers} 层、{width} 维），不是 {size}；去掉 --size，或换一个文件")

    # ② 几个头？切成几个头，张量的形状都一样，数不出来：检查点里写着，别的文件按规模查表。
    if saved is None:
        if found is None or openai and found == "mini":
            raise ValueError(f"{path} 是 {layers} 层、{width} 维，不是 GPT-2 的四种规模之一，不知道有几个头")
        saved = SIZES[found]
    config = BASE_CONFIG | {"vocab_size": vocab_size, "context_length": n_ctx, "emb_dim": width, "n_layers": layers}
    config["qkv_bias"] = openai or "trf_blocks.0.att.W_query.bias" in state  # 原书 5.2 节自己训练的不带偏置，5.5 节的带
    try:
        config["n_heads"] = int(saved["n_heads"])
        agreed = vocab_size == 50257 and config["n_heads"] > 0 and all(saved[key] == config[key] for key in saved.keys() & config.keys() - {"drop_rate"})
    except Exception:  # 里面写的可以是任何东西
        agreed = False
    if not agreed:
        raise ValueError(f"{path} 里写的配置与权重对不上，或词表不是 GPT-2 的（{vocab_size} 个词元）")

    # ③ 装得下吗？装得下，才建模型、装权重。
    check_memory(config)
    model = GPTModel(config)
    if openai:
        load_weights_into_gpt(model, load_gpt2_params_from_safetensors(path, GPT2_SETTINGS[found]))
        return model, config, kind
    try:
        # 名字与原书相同，直接装。load_state_dict 要求一项不多、一项不少，所以把模型自己的掩码补上。
        model.load_state_dict(state | dict(model.named_buffers()))
    except RuntimeError:  # torch 的报错是长长一段英文，列出每个对不上的名字
        raise ValueError(f"{path} 里的权重与 {layers} 层、{width} 维的 GPTModel 对不上：名字或形状不同") from None
    return model, config, kind


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


# region 沿用 ch05/main/gpt_train.py: text_to_token_ids, token_ids_to_text
def text_to_token_ids(text, tokenizer):
    """文本 → 模型的输入。（详解见 ch05/main/gpt_train.py）"""
    encoded = tokenizer.encode(text, allowed_special={"<|endoftext|>"})
    return torch.tensor(encoded).unsqueeze(0)  # (1, t)


def token_ids_to_text(token_ids, tokenizer):
    """模型的输出 → 文本。（详解见 ch05/main/gpt_train.py）"""
    return tokenizer.decode(token_ids.squeeze(0).tolist())


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
    """读入训练好的模型，按给定的解码策略写一段。"""
    parser = argparse.ArgumentParser(description="5.3–5.5 节　用训练好的模型生成文本")
    parser.add_argument("--prompt", default="Every effort moves you", help="提示词（默认：Every effort moves you）")
    parser.add_argument("--max-new-tokens", type=int, default=25, help="最多生成几个词元（默认：25）")
    parser.add_argument("--temperature", type=float, default=0.0, help="温度，0 表示贪心（默认：0）")
    parser.add_argument("--top-k", type=int, help="只在分数最高的几个词元里选（默认：不限制）")
    parser.add_argument("--size", choices=SIZES, help="mini 是你训练的（默认）；其余是 OpenAI 的，没下载就用你训练的 ch05/outputs/gpt_规模.pth")
    parser.add_argument("--from-file", type=Path, help="就用这个文件：检查点、原书的状态字典（.pth 或 .safetensors），或 hub 上的 safetensors")
    parser.add_argument("--device", default="cpu", help="auto、mps、cuda 或 cpu（默认：cpu；逐个词元生成时往往更快）")
    parser.add_argument("--seed", type=int, default=123, help="随机种子（默认：123）；温度不为 0 时，换一个就换一段话")
    args = parser.parse_args()
    if args.max_new_tokens < 1:
        parser.error(f"--max-new-tokens 至少是 1，不能是 {args.max_new_tokens}")
    if not 0 <= args.seed < 2**63:
        parser.error(f"--seed 应在 0 到 2⁶³ − 1 之间，不能是 {args.seed}")
    try:
        device = pick_device(args.device)
        path = args.from_file or OUTPUTS / f"gpt_{args.size or 'mini'}.pth"
        if not args.from_file and args.size in GPT2_SETTINGS:
            try:
                path = find_gpt2_file(args.size)
            except FileNotFoundError:
                if not path.is_file():  # 没有下载，也没有自己训练过
                    raise
        model, config, kind = load_model(path, args.size)
        tokenizer = tiktoken.get_encoding("gpt2")
        idx = text_to_token_ids(args.prompt, tokenizer).to(device)
        if not 1 <= idx.shape[1] <= config["context_length"]:
            raise ValueError(f"提示词有 {idx.shape[1]} 个词元，应在 1 到 {config['context_length']}（上下文长度）之间")
        model.to(device).eval()
        torch.manual_seed(args.seed)
        out = generate(model, idx, args.max_new_tokens, config["context_length"], args.temperature, args.top_k, eos_id=50256)
        few = min(args.max_new_tokens, 8)  # 自查只写几个词元：大模型写一个就要好几秒
        greedy = generate(model, idx, few, config["context_length"], eos_id=50256)
        first = generate(model, idx, few, config["context_length"], temperature=1.0, top_k=1, eos_id=50256)
    except (ValueError, OSError) as error:
        parser.error(str(error))

    strategy = "贪心" if args.temperature == 0 else f"温度 {args.temperature}" + (f"，top-k {args.top_k}" if args.top_k else "")
    print(f"{kind}　{path}")
    print(f"模型　　{config['n_layers']} 层，{config['emb_dim']} 维，{config['n_heads']} 头，约 {memory_needed(config):.1f} GB")
    print(f"策略　　{strategy}\n")
    print(token_ids_to_text(out, tokenizer))

    print("\n这个数字对吗？")
    confirm("top_k=1 就是贪心：只剩第一名，温度再高也只能选它", torch.equal(greedy, first), "top-k 的门槛取错了名次")
    confirm("输出以提示词开头", torch.equal(out[:, : idx.shape[1]], idx), "拼接的次序反了")
    if kind == "OpenAI 格式的权重":
        confirm("输出层与词嵌入相同（权重共享）", torch.equal(model.out_head.weight, model.tok_emb.weight), "out_head 忘了装")
    asked = (args.prompt, args.max_new_tokens, args.temperature, args.top_k, args.seed, device.type)
    if path.stat().st_size == 548_105_171 and asked == ("Every effort moves you", 25, 1.5, 50, 123, "cpu"):  # OpenAI 的 124M，原书 5.5 节的设置
        text = "Every effort moves you toward finding an ideal new way to practice something!\n\nWhat makes us want to be on top of that?"
        confirm("与原书 5.5 节写的一字不差", token_ids_to_text(out, tokenizer) == text, "某个权重装错了地方，或忘了转置")


if __name__ == "__main__":
    main()
