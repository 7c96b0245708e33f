"""第 5 章 · 5.5 节　把 OpenAI 的权重装进自己写的 GPT

读完你应该能回答：
    1. 权重文件里有什么？c_attn 是什么，为什么要切成三份？
    2. 权重为什么要转置？哪些忘了转置会报错，哪些不会？
    3. 文件里没有输出层，out_head 的权重从哪里来？
    4. 装错一处会怎样：报错，还是悄悄地说胡话？怎样证明全都装对了？

运行：
    python ch05/main/example_05_openai_weights.py        # 有没有真正的权重，都从头走到尾
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    没有权重时约 2 秒，0.4 GB；有 124M 时约 8 秒，1.9 GB（2 核 CPU）

真正的权重（548 MB）：python setup/download.py gpt2-124M。没有它，脚本自己造一个小文件，名字和摆法与 OpenAI 的一模一样，只是数是随机的。

形状记号（全书统一）：b 批大小　t 序列长度（token 数）　d 嵌入维度　h 头数　k 每个头的维度（k = d / h）　V 词表大小　n_ctx 上下文长度
"""

import os
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import tiktoken
import torch
import torch.nn as nn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


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


# region 沿用 ch05/main/gpt_generate.py: generate, assign, load_weights_into_gpt
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


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion

# %% 5.5.0　有真正的权重就用，没有就造一个
temporary = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # 用完自动删除，中途出错也会
try:
    path, settings = find_gpt2_file("124M"), GPT2_SETTINGS["124M"]
except FileNotFoundError:
    path = Path(temporary.name) / "tiny.safetensors"
    settings = {"n_vocab": 50257, "n_ctx": 64, "n_embd": 48, "n_head": 4, "n_layer": 2}
    torch.manual_seed(123)
    # 偏置也要随机：OpenAI 的偏置训练过，不是 0。要是造成 0，装反了、装漏了都看不出来。
    tensors = {name: 0.1 * torch.randn(shape) for name, shape in gpt2_shapes(settings).items()}
    for name in tensors:
        if re.search(r"ln_.\.weight", name):
            tensors[name] += 1  # 层归一化的缩放在 1 附近，与训练过的模型一样
    save_file(tensors, path)
real = path.stat().st_size == 548_105_171  # OpenAI 的 124M 正好是这么多字节；只有它，才核对书上的数
print(f"【5.5】{'OpenAI 的 124M' if real else '自己造的小文件' if path.name.startswith('tiny') else '124M 大小的权重，但不是 OpenAI 的那份'}　{path}")

# %% 5.5.1　文件里有什么
# 只有名字和数，没有代码，也没有"几层、几个头"。层数、宽度看形状就知道；头数看不出来，所以要另外记着。
params = load_gpt2_params_from_safetensors(path, settings)
print(f"\n【5.5.1】设置　{settings}")
print(f"【5.5.1】params 的键　{list(params)}　blocks 里有 {len(params['blocks'])} 块")
print(f"【5.5.1】词嵌入 wte　{params['wte'].shape}　(V, d)　开头 {params['wte'][0, :3]}")
print("【5.5.1】第 1 块的注意力：")
attn = params["blocks"][0]["attn"]
for name in ("c_attn", "c_proj"):  # c 是 convolution：OpenAI 当年用卷积核为 1 的卷积写的线性层，算出来完全一样
    print(f"  {name}　w {attn[name]['w'].shape}　b {attn[name]['b'].shape}")
if not real:
    print("  （真正的 124M，这里是：12 块；wte (50257, 768)，开头 -0.11010301 -0.03926672 0.03310751；c_attn 的 w (768, 2304)）")

# %% 5.5.2　c_attn：Q、K、V 挤在一个矩阵里
# OpenAI 用一次大乘法同时算出查询、键、值；我们在第 3 章写了三层。把大矩阵从左到右切成三份，次序是 Q、K、V。
w, bias = torch.from_numpy(attn["c_attn"]["w"]), torch.from_numpy(attn["c_attn"]["b"])
q_w, k_w, v_w = np.split(attn["c_attn"]["w"], 3, axis=-1)  # 三个 (d, d)
q_b, k_b, v_b = np.split(attn["c_attn"]["b"], 3, axis=-1)  # 三个 (d,)
x = torch.randn(5, settings["n_embd"])  # (t, d)　随便 5 个词元
together = x @ w + bias  # (t, 3d)　OpenAI 的写法：一次算完
apart = torch.cat([x @ torch.from_numpy(part) + torch.from_numpy(b) for part, b in [(q_w, q_b), (k_w, k_b), (v_w, v_b)]], dim=-1)  # (t, 3d)
split_error = (together - apart).abs().max().item()
print(f"\n【5.5.2】{tuple(w.shape)} 切成三个 {q_w.shape}；一次算完与分三次算，最多差 {split_error:.0e}")

# %% 5.5.3　转置：一边的次序是输入、输出，另一边是输出、输入
# OpenAI 算 x @ w + b，w 的行数是输入的维度；nn.Linear 算 x @ weight.T + bias，weight 的行数是输出的维度。所以装进去要转置。
d = settings["n_embd"]
linear = nn.Linear(d, 4 * d)
c_fc = params["blocks"][0]["mlp"]["c_fc"]["w"]
print(f"\n【5.5.3】升维那层：文件里 {c_fc.shape}，nn.Linear 里 {tuple(linear.weight.shape)}：忘了转置，形状对不上，assign 会报错：")
try:
    assign(linear.weight, c_fc)
    caught = False
except ValueError as error:
    caught = True
    print(f"  {error}")
# 注意力里的四个矩阵都是方阵，转不转置形状都一样，忘了也不报错：这是最容易错的一处。
square = torch.from_numpy(attn["c_proj"]["w"])  # (d, d)
forgotten = (x @ square - x @ square.T).abs().max().item()
print(f"【5.5.3】out_proj 是方阵：忘了转置不报错，但输出最多差 {forgotten:.2f}")

# %% 5.5.4　建一个同样大小的 GPTModel：与第 4 章的配置差两处
# 上下文从 256 换回 1024；Q、K、V 的投影带偏置（今天的模型大多不带，但权重里有，就得给它留地方）。
config = {
    "vocab_size": settings["n_vocab"],
    "context_length": settings["n_ctx"],
    "emb_dim": settings["n_embd"],
    "n_heads": settings["n_head"],
    "n_layers": settings["n_layer"],
    "drop_rate": 0.0,  # 只生成、不训练，用不着 dropout
    "qkv_bias": True,
}
torch.manual_seed(123)
gpt = GPTModel(config).eval()
load_weights_into_gpt(gpt, params)
print("\n【5.5.4】装好了；qkv_bias 写成 False，就会：")
try:
    load_weights_into_gpt(GPTModel({**config, "n_layers": 1, "qkv_bias": False}), {**params, "blocks": params["blocks"][:1]})
except ValueError as error:
    print(f"  {error}")

# %% 5.5.5　权重共享：输出层就是词嵌入
# 输入时，词嵌入把编号变成向量；输出时，要问"这个向量最像哪个词元的向量"，用的还是那张表：logits = x @ wte.T。
# 所以文件里没有输出层，124M 是不算它的。我们的 out_head 是单独的一层，就把 wte 再装一份进去。
total = sum(p.numel() for p in gpt.parameters())
stored = sum(np.prod(shape) for shape in gpt2_shapes(settings).values())
print(f"\n【5.5.5】文件里 {stored:,} 个数；我们的模型 {total:,} 个，多出的 {total - stored:,} 个就是又装了一份的 wte")


# %% 5.5.6　全都装对了吗？不用 GPTModel，照 OpenAI 的写法再算一遍
def gpt2_by_hand(ids, params, n_head):
    """照 OpenAI 的写法算 logits：没有 nn.Module，没有转置，只有 x @ w + b；算法是第 3、4 章的，只是换了一种写法。

    参数:
        ids (Tensor): 词元编号，(t,)
        params (dict): 权重，按文件里的样子
        n_head (int): 头数

    返回:
        Tensor: logits（未归一化的分数），(t, V)
    """

    def dense(x, part):
        return x @ torch.from_numpy(part["w"]) + torch.from_numpy(part["b"])  # (t, d_out)

    def norm(x, part):
        return nn.functional.layer_norm(x, x.shape[-1:], torch.from_numpy(part["g"]), torch.from_numpy(part["b"]))

    t, wte = len(ids), torch.from_numpy(params["wte"])
    future = torch.full((t, t), -torch.inf).triu(diagonal=1)  # (t, t)　加在分数上：右上角是 -inf，看不到未来
    x = wte[ids] + torch.from_numpy(params["wpe"][:t])  # (t, d)
    for block in params["blocks"]:
        queries, keys, values = dense(norm(x, block["ln_1"]), block["attn"]["c_attn"]).chunk(3, dim=-1)  # 三个 (t, d)
        heads = []  # 一个头一个头地算，慢但好懂；第 3 章的变形只是把它们并成一次
        for q, k, v in zip(queries.chunk(n_head, dim=-1), keys.chunk(n_head, dim=-1), values.chunk(n_head, dim=-1)):  # 各 (t, k)
            heads.append(torch.softmax(q @ k.T / k.shape[-1] ** 0.5 + future, dim=-1) @ v)  # (t, k)
        x = x + dense(torch.cat(heads, dim=-1), block["attn"]["c_proj"])  # (t, d)
        # GPT-2 用的是 tanh 近似的 GELU，第 4 章手写的那个公式。
        hidden = nn.functional.gelu(dense(norm(x, block["ln_2"]), block["mlp"]["c_fc"]), approximate="tanh")  # (t, 4d)
        x = x + dense(hidden, block["mlp"]["c_proj"])  # (t, d)
    return norm(x, params) @ wte.T  # (t, V)　最后的层归一化，再与每个词元的向量求点积


tokenizer = tiktoken.get_encoding("gpt2")
idx = text_to_token_ids("Every effort moves you", tokenizer)  # (1, t)
by_hand = gpt2_by_hand(idx[0], params, settings["n_head"])  # (t, V)
with torch.no_grad():
    difference = (gpt(idx)[0] - by_hand).abs().max().item()
print(f"\n【5.5.6】GPTModel 与手写的算法，{tuple(by_hand.shape)} 个 logits 最多差 {difference:.0e}（logits 本身的大小约 {by_hand.abs().mean():.1f}）")

# %% 故意装错：不报错，但算出来的不是同一个模型
first = gpt.trf_blocks[0].att
good = {name: tensor.clone() for name, tensor in first.state_dict().items()}
mistakes = {
    "Q 与 K 对调": {"W_query.weight": good["W_key.weight"], "W_key.weight": good["W_query.weight"]},
    "K 与 V 对调": {"W_key.weight": good["W_value.weight"], "W_value.weight": good["W_key.weight"]},
    "out_proj 忘了转置": {"out_proj.weight": good["out_proj.weight"].T},
    "Q、K、V 的偏置没装": {name: torch.zeros(d) for name in ("W_query.bias", "W_key.bias", "W_value.bias")},
    "头数写成一半": {},  # 什么权重都没错；切成几个头，参数的形状都一样，所以头数写错也没人知道
}
print("【5.5.6】只在第 1 块里装错一处，没有任何报错，logits 却差了：")
wrong = []
for title, changed in mistakes.items():
    first.load_state_dict(good | changed)
    first.num_heads = settings["n_head"] // 2 if title.startswith("头数") else settings["n_head"]
    first.head_dim = d // first.num_heads
    with torch.no_grad():
        wrong.append((gpt(idx)[0] - by_hand).abs().max().item())
    print(f"  {wrong[-1]:8.3f}　{title}")
first.load_state_dict(good)  # 改回来
first.num_heads, first.head_dim = settings["n_head"], d // settings["n_head"]

# %% 5.5.7　让它说话
# 原书这里把温度定得偏高（1.5），再用 top_k 50 挡住冷门的；种子相同、权重相同，写的就一字不差。
torch.manual_seed(123)
out = generate(gpt, idx, max_new_tokens=25, context_size=config["context_length"], temperature=1.5, top_k=50)  # (1, t + 25)
print("\n【5.5.7】温度 1.5，top_k 50：", repr(token_ids_to_text(out, tokenizer)))
book = "Every effort moves you toward finding an ideal new way to practice something!\n\nWhat makes us want to be on top of that?"
if not real:
    print(f"  （权重是随机的，所以是胡话；真正的 124M 写的是 {book!r}）")
temporary.cleanup()

# %% 这个数字对吗？
print("\n这个数字对吗？")
confirm("c_attn 切成三份，与一次算完相同", split_error < 1e-3, "切错了方向：该沿最后一维切")
confirm("长方形的矩阵忘了转置，assign 会报错", caught, "assign 没有检查形状")
confirm(f"GPTModel 与照 OpenAI 的写法直接算，logits 最多差 {difference:.0e}", difference < 1e-2, "装错了地方，或忘了转置")
confirm("五种装错法，每一种都看得出来（比装对时至少差 10 倍）", min(wrong) > 10 * difference, "偏置全是 0，或第 1 块没有用上")
confirm("输出层与词嵌入相同，但不是同一份", torch.equal(gpt.out_head.weight, gpt.tok_emb.weight) and gpt.out_head.weight is not gpt.tok_emb.weight, "out_head 忘了装")
confirm(f"多出的参数正好是 V·d = {settings['n_vocab'] * d:,}", total - stored == settings["n_vocab"] * d, "qkv_bias 没有打开")
if real:
    broken, wte = "文件坏了：python setup/download.py --verify", gpt.tok_emb.weight.detach()
    same = np.allclose(wte[0, :3], [-0.11010301, -0.03926672, 0.03310751], rtol=0, atol=1e-8)
    confirm("wte 的开头与原书相同：-0.11010301 -0.03926672 0.03310751", same, broken)
    confirm("wte 的最后一个数是 0.12067825", abs(wte[-1, -1].item() - 0.12067825) < 1e-8, broken)
    confirm("写的与原书 5.5 节一字不差", token_ids_to_text(out, tokenizer) == book, "装错了地方，或种子、温度不同")

# %% 动手改
# 1. 把造文件那一行的 0.1 * torch.randn 改成 torch.zeros：五种装错法全都"看不出来"了。全是 0 的权重什么也证明不了。
# 2. 5.5.2 里把 axis=-1 改成 axis=0：形状变成 (d/3, 3d)，一乘就报错；先猜报错里的两个形状。
# 3. 把 config 里的 context_length 改成 settings["n_ctx"] // 2：assign 报形状不同。位置嵌入一行对一个位置，装不进短的表。
