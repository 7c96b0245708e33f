"""第 5 章 · 5.5 节　把 OpenAI 的 GPT-2 权重转成本项目的格式，只做一次

读完、敲完这个脚本，你应该能不看书回答：
    1. 124M 这个名字里的数，是怎么从 12 层、768 维算出来的？第 4 章数出来的 163,009,536 又多在哪里？
    2. 一个权重文件在装进模型之前，要检查哪几样？哪一样不检查，模型就只会说胡话？
    3. 别人存的检查点，名字前面为什么会多出 _orig_mod. 或 module.？

运行：
    python ch05/main/gpt_download.py                  # 先下载：python setup/download.py gpt2-124M（548 MB）
    python ch05/main/gpt_download.py --size 355M
    python ch05/main/gpt_download.py --from-file gpt2-small-124M.pth    # 转换自己带来的文件，如原书发布的
    124M 约 12 秒，2.0 GB（2 核 CPU）

得到 ch05/outputs/gpt2-124M.pth，内容是 {"config", "model"}，与 gpt_train.py 存的一样；第 6、7 章直接用它。
原书在这里用 TensorFlow 读 OpenAI 最初发布的文件，为此要装一个很大的包；这里读 safetensors，数是同一份。

形状记号（全书统一）：b 批大小　t 序列长度（词元数）　d 嵌入维度　V 词表大小　n_ctx 上下文长度
"""

import argparse
import os
import re
import sys
from pathlib import Path

import numpy as np
import tiktoken
import torch
import torch.nn as nn
from safetensors.torch import load_file

# 改这里
PROMPT = "Every effort moves you"
OUTPUTS = Path(__file__).resolve().parents[1] / "outputs"


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


# region 沿用 ch05/main: text_to_token_ids, token_ids_to_text
def text_to_token_ids(text, tokenizer):
    """文本 → 模型的输入，(1, t) 的词元编号。（详解见 ch05/main/example_01_loss.py）"""
    encoded = tokenizer.encode(text, allowed_special={"<|endoftext|>"})
    return torch.tensor(encoded).unsqueeze(0)  # (1, t)


def token_ids_to_text(token_ids, tokenizer):
    """模型的输出 → 文本。（详解见 ch05/main/example_01_loss.py）"""
    return tokenizer.decode(token_ids.squeeze(0).tolist())


# endregion


# region 沿用（含注释） ch05/main: GPT2_SETTINGS, gpt2_shapes, nest_gpt2_params, assign, load_weights_into_gpt
# 模型有多大，权重文件里没有写，要另外记着（原书从 hparams.json 读）。头数尤其如此：切成 12 个头还是 16 个头，张量的形状都一样。
# 四种规模的每个头都是 64 维：768 / 12 = 1024 / 16 = 1280 / 20 = 1600 / 25 = 64。
GPT2_SETTINGS = {
    "124M": {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12},
    "355M": {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 1024, "n_head": 16, "n_layer": 24},
    "774M": {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 1280, "n_head": 20, "n_layer": 36},
    "1558M": {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 1600, "n_head": 25, "n_layer": 48},
}


def gpt2_shapes(settings):
    """列出 GPT-2 的权重文件里应有的每一项：名字和形状。

    参数:
        settings (dict): 模型的大小，GPT2_SETTINGS 的一项

    返回:
        dict: 名字 → 形状，如 "h.0.attn.c_attn.weight" → (768, 2304)
    """
    d = settings["n_embd"]
    # 每一块里的名字都相同。权重的两维是"输入、输出"，用的时候算 x @ w + b。
    # 开头的 c 是 convolution：OpenAI 当年用宽度为 1 的卷积写线性层，算出来完全一样。
    block = {
        "ln_1.weight": (d,), "ln_1.bias": (d,),
        "attn.c_attn.weight": (d, 3 * d), "attn.c_attn.bias": (3 * d,),  # Q、K、V 三个矩阵左右并排
        "attn.c_proj.weight": (d, d), "attn.c_proj.bias": (d,),
        "ln_2.weight": (d,), "ln_2.bias": (d,),
        "mlp.c_fc.weight": (d, 4 * d), "mlp.c_fc.bias": (4 * d,),
        "mlp.c_proj.weight": (4 * d, d), "mlp.c_proj.bias": (d,),
    }  # fmt: skip
    shapes = {"wte.weight": (settings["n_vocab"], d), "wpe.weight": (settings["n_ctx"], d)}  # 词嵌入、位置嵌入
    for layer in range(settings["n_layer"]):
        shapes |= {f"h.{layer}.{name}": shape for name, shape in block.items()}
    return shapes | {"ln_f.weight": (d,), "ln_f.bias": (d,)}  # 最后的层归一化；没有输出层，它与词嵌入共用一份


def nest_gpt2_params(tensors, settings):
    """把平铺的"名字 → 张量"，整理成原书的 params：一级一级的字典。

    参数:
        tensors (dict): 名字 → 张量，名字与 gpt2_shapes 列的相同
        settings (dict): 模型的大小，GPT2_SETTINGS 的一项

    形状:
        params["wte"] (V, d)　params["wpe"] (n_ctx, d)　params["g"]、params["b"] (d,)　params["blocks"] 里一块一个字典

    返回:
        dict: 嵌套的字典，最里面是 float32 的 NumPy 数组

    出处: 原书 5.5 节的 load_gpt2_params_from_tf_ckpt，那里读的是 TensorFlow 的文件
    """
    params = {"blocks": [{} for _ in range(settings["n_layer"])]}
    for name, tensor in tensors.items():
        parts = name.split(".")
        # 最后一级照原书的叫法：w 是权重，b 是偏置；层归一化的缩放叫 g（gain）。
        last = "b" if parts[-1] == "bias" else "g" if parts[-2].startswith("ln") else "w"
        array = tensor.float().numpy()  # 半精度的文件转成 float32；已经是的，一个数也不复制
        if parts[0] == "h":  # "h.3.attn.c_attn.weight" → params["blocks"][3]["attn"]["c_attn"]["w"]
            inner = params["blocks"][int(parts[1])]
            for part in parts[2:-1]:
                inner = inner.setdefault(part, {})
            inner[last] = array
        elif parts[0] == "ln_f":  # 最后的层归一化，直接放在最外面
            params[last] = array
        else:  # wte、wpe
            params[parts[0]] = array
    return params


def assign(left, right):
    """把一个数组变成模型的参数；形状不同就报错。

    参数:
        left (nn.Parameter): 模型里原来的参数
        right (ndarray): 要换上的数，形状应与 left 相同

    返回:
        nn.Parameter: 新的参数，数据类型和设备与 left 相同

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
        params (dict): nest_gpt2_params 整理好的权重

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
        # ① c_attn 切成三份，次序是 Q、K、V；每一份都要转置。三个都是方阵，装反了、忘了转置，都不会报错。
        weights = np.split(attn["c_attn"]["w"], 3, axis=-1)  # 三个 (d, d)
        biases = np.split(attn["c_attn"]["b"], 3, axis=-1)  # 三个 (d,)
        for linear, w, b in zip((block.att.W_query, block.att.W_key, block.att.W_value), weights, biases):
            linear.weight = assign(linear.weight, w.T)  # (d, d)
            linear.bias = assign(linear.bias, b)  # (d,)
        # ② 其余三个线性层一一对应：混合各头的 out_proj，前馈网络的升维和降维。
        dense = [(block.att.out_proj, attn["c_proj"]), (block.ff.layers[0], mlp["c_fc"]), (block.ff.layers[2], mlp["c_proj"])]
        for linear, part in dense:
            linear.weight = assign(linear.weight, part["w"].T)
            linear.bias = assign(linear.bias, part["b"])
        # ③ 层归一化：g 是缩放，b 是平移。
        for norm, part in [(block.norm1, block_params["ln_1"]), (block.norm2, block_params["ln_2"])]:
            norm.scale = assign(norm.scale, part["g"])  # (d,)
            norm.shift = assign(norm.shift, part["b"])  # (d,)

    gpt.final_norm.scale = assign(gpt.final_norm.scale, params["g"])  # (d,)
    gpt.final_norm.shift = assign(gpt.final_norm.shift, params["b"])  # (d,)
    # ④ 权重共享（weight tying）：OpenAI 拿词嵌入当输出层用。我们复制一份给 out_head，之后训练时两边各改各的。
    gpt.out_head.weight = assign(gpt.out_head.weight, params["wte"])  # (V, d)


# endregion


def read_tensors(path):
    """读一个权重文件，去掉名字前面多出来的部分，逐个检查。

    参数:
        path (Path): .safetensors，或 .pth：直接是状态字典，或放在 model、model_state_dict 里

    返回:
        dict: 名字 → 张量；掩码已经去掉，模型自己会建

    异常:
        ValueError: 读不出来，或里面有不能用的数
    """
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            # weights_only：只读数，不执行文件里夹带的代码。mmap：用到哪个张量，才读哪个。
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        content = content.get("model", content.get("model_state_dict", content))
        tensors, removed, extra = {}, set(), r"\b(?:_orig_mod|module|transformer)\."
        for name, tensor in content.items():
            # torch.compile 过的模型，名字前面多 _orig_mod.（只编译某几块的，多在中间）；多卡训练（DDP）的多 module.；
            # transformers 存的多 transformer.。先编译还是先套 DDP，两个的次序就不同，所以不论次序，有就去掉。
            removed |= set(re.findall(extra, name))
            name = re.sub(extra, "", name)
            # 掩码不要。.attn.bias 前面的点不能少：attn.c_attn.bias 才是偏置。
            if not name.endswith((".att.mask", ".attn.bias", ".attn.masked_bias")):
                tensors[name] = tensor
        usable = {name: bool(tensor.is_floating_point() and tensor.isfinite().all()) for name, tensor in tensors.items()}
    except Exception as error:  # 坏文件、别人的文件能引出各种异常，处理办法都一样
        raise ValueError(f"{path} 读不出来：不是权重文件，或没有下载完整（核对：python setup/download.py --verify）") from error
    for name, good in usable.items():
        if not good:  # 一个 nan，经过一次矩阵乘法就传染给所有的数
            raise ValueError(f"{path} 里的 {name} 有 nan、inf，或不是浮点数（量化过的读不了），请换一个文件")
    if removed:
        print(f"名字里多出来的 {'、'.join(sorted(removed))} 去掉了")
    return tensors


def check_shapes(tensors, wanted, path):
    """名字和形状要一项不差：少一项、错一处，有时不报错，模型只会说胡话。

    参数:
        tensors (dict): 名字 → 张量，文件里的
        wanted (dict): 名字 → 形状，应有的
        path (Path): 文件，报错时用

    异常:
        ValueError: 有对不上的
    """
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    fits = [size for size, settings in GPT2_SETTINGS.items() if gpt2_shapes(settings) == found]
    wrong = [f"它是 {size} 的，请加 --size {size}" for size in fits if found != wanted]
    wrong += [f"少了 {name}" for name in wanted if name not in found] + [f"多出 {name}" for name in found if name not in wanted]
    wrong += [f"{name} 的形状是 {found[name]}，应是 {wanted[name]}" for name in wanted if found.get(name, wanted[name]) != wanted[name]]
    if wrong:
        raise ValueError(f"{path} 有 {len(wrong)} 处对不上：{wrong[0]}")


def build_gpt(tensors, settings, path):
    """建一个这么大的 GPTModel，装上权重；认得 OpenAI 的名字，也认得本项目（就是原书）的名字。

    参数:
        tensors (dict): 名字 → 张量
        settings (dict): 模型的大小，GPT2_SETTINGS 的一项
        path (Path): 文件，报错时用

    返回:
        tuple[GPTModel, dict]: 装好的模型、它的配置

    异常:
        ValueError: 名字或形状对不上
    """
    config = {"vocab_size": settings["n_vocab"], "context_length": settings["n_ctx"], "emb_dim": settings["n_embd"]}
    config |= {"n_heads": settings["n_head"], "n_layers": settings["n_layer"], "drop_rate": 0.0, "qkv_bias": True}
    gpt = GPTModel(config)
    if "tok_emb.weight" in tensors:  # 本项目的名字：直接装
        tied = "out_head.weight" not in tensors  # 权重共享的检查点里没有输出层：它就是词嵌入
        tensors = {"out_head.weight": tensors["tok_emb.weight"]} | tensors
        masks = dict(gpt.named_buffers())
        check_shapes(tensors, {name: tuple(tensor.shape) for name, tensor in gpt.state_dict().items() if name not in masks}, path)
        gpt.load_state_dict(tensors | masks)
        if tied:
            print("文件里没有输出层：它与词嵌入共享，把词嵌入再装了一份")
        return gpt, config
    head = tensors.pop("lm_head.weight", None)
    check_shapes(tensors, gpt2_shapes(settings), path)
    if head is not None and not head.equal(tensors["wte.weight"]):
        raise ValueError(f"{path} 的输出层与词嵌入不是同一个矩阵，不是 OpenAI 的那种 GPT-2")
    load_weights_into_gpt(gpt, nest_gpt2_params(tensors, settings))
    return gpt, config


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
    """读权重、检查、装进 GPTModel、存成一种格式，再让它写一句。"""
    parser = argparse.ArgumentParser(description="5.5 节　把 OpenAI 的 GPT-2 权重转成 ch05/outputs/gpt2-规模.pth")
    parser.add_argument("--size", default="124M", choices=GPT2_SETTINGS, help="哪种规模（默认：124M）")
    parser.add_argument("--from-file", type=Path, help="转换这个文件，而不是 gpt2-规模.safetensors")
    args = parser.parse_args()
    settings, saved = GPT2_SETTINGS[args.size], OUTPUTS / f"gpt2-{args.size}.pth"
    path = args.from_file or find_data(f"gpt2-{args.size}.safetensors")

    # 参数有几个：一块是注意力 4d² + 4d（Q、K、V 和 out_proj，都带偏置），前馈网络 8d² + 5d，两个层归一化 4d，合计 12d² + 13d。
    d, V = settings["n_embd"], settings["n_vocab"]
    by_hand = (V + settings["n_ctx"]) * d + settings["n_layer"] * (12 * d * d + 13 * d) + 2 * d
    need, memory = 4 * (by_hand + V * d) / 2**30 + 0.7, total_memory()  # 每个数 4 字节；0.7 GB 给 PyTorch 和装到一半的那一层
    part = saved.with_suffix(".part")
    try:
        if memory and need > memory:
            raise ValueError(f"{args.size} 约要 {need:.1f} GB 内存，这台机器只有 {memory:.1f} GB，请换小一点的 --size")
        tensors = read_tensors(path)
        gpt, config = build_gpt(tensors, settings, path)
        OUTPUTS.mkdir(exist_ok=True)
        with open(part, "wb") as file:
            torch.save({"config": config, "model": gpt.state_dict()}, file)
        os.replace(part, saved)  # 写完了才改名：中途断了，旧的还在
    except (ValueError, OSError) as error:
        parser.error(str(error))
    finally:
        part.unlink(missing_ok=True)  # 没有写完的半个文件，不留下
    print(f"【5.5】读了　{path}\n设置　{settings}\n配置　{config}\n存到　{saved}")

    tokenizer = tiktoken.get_encoding("gpt2")
    out = generate_text_simple(gpt.eval(), text_to_token_ids(PROMPT, tokenizer), 15, config["context_length"])  # (1, t + 15)
    written = token_ids_to_text(out, tokenizer)
    print(f"\n贪心解码写的：{written}\n想调温度和 top-k：python ch05/main/gpt_generate.py --size {args.size}")

    print("\n这个数字对吗？")
    total = sum(p.numel() for p in gpt.parameters())
    claim = f"(V + n_ctx)·d + 层数·(12d² + 13d) + 2d = {by_hand:,}，就是名字里的 {args.size}；我们的输出层不共享，再多 V·d，共 {total:,}"
    confirm(claim, total == by_hand + V * d, "漏了某一块，或偏置没有打开")
    confirm("输出层与词嵌入相同（权重共享）", torch.equal(gpt.out_head.weight, gpt.tok_emb.weight), "out_head 忘了装，或这份权重微调过")
    if path.stat().st_size == 548_105_171:  # OpenAI 的 124M 正好这么多字节；别人的权重，不与书比
        wte, broken = gpt.tok_emb.weight, "文件坏了：python setup/download.py --verify"
        confirm("词嵌入的最后一个数是 0.12067825，与原书相同", abs(wte[-1, -1].item() - 0.12067825) < 1e-8, broken)
        book = "Every effort moves you forward.\n\nThe first step is to understand the importance of your work"
        confirm("写的与原书 6.4 节一字不差", written == book or PROMPT != "Every effort moves you", "某个权重装错了地方，或忘了转置")


if __name__ == "__main__":
    main()
