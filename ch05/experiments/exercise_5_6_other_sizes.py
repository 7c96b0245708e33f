"""第 5 章 · 练习 5.6　换成最大的 1558M，要改几行？

题目：　把 124M 换成 1558M，代码要改哪里？写的东西和 124M 有什么不同？
先想：　参数多了 12 倍多，内存也要 12 倍吗？写一个词元的时间呢？（先想 10 秒，再运行）
解法：　① 四种规模各有多少参数、文件多大、占多少内存，一张表算清楚；② 同一套代码，只换 settings，装两种"假装的规模"；③ 有真的，就让它写。
学到：　要改的只有 settings 里的宽度、层数、头数；装权重的代码一行不改，因为每一块的零件都相同。
　　　　块里的参数 ≈ 12 · 层数 · d²：层数 4 倍、宽度 2.1 倍，乘起来约 17 倍；词嵌入只长 2.1 倍，所以总共 12.5 倍；
　　　　内存、每个词元的计算量，都差不多跟着参数走。

运行：
    python ch05/experiments/exercise_5_6_other_sizes.py                 # 表、两种假装的规模
    python ch05/experiments/exercise_5_6_other_sizes.py --size 1558M    # 再让真的写；先下载，再运行 gpt_download.py --size 1558M
    python ch05/experiments/exercise_5_6_other_sizes.py --quick         # 只写 4 个词元
    没有权重时约 2 秒，0.4 GB（2 核 CPU）；1558M 约要 13 GB 内存

形状记号：　b 批大小　t 序列长度（词元数）　m 新写的词元数　d 嵌入维度　h 头数　k 每个头的维度　V 词表大小
"""

import argparse
import math
import os
import sys
import time
from pathlib import Path

import numpy as np
import tiktoken
import torch
import torch.nn as nn

# 公开的参数个数（输出层与词嵌入算一份），用来核对。
PUBLISHED = {"124M": 124_439_808, "355M": 354_823_168, "774M": 774_030_080, "1558M": 1_557_611_200}
# 原书 5.5 节（124M）和这道练习（1558M）写的，种子 123，温度 1.5，top_k 50。
BOOK = {
    "124M": "Every effort moves you toward finding an ideal new way to practice something!\n\nWhat makes us want to be on top of that?",
    "1558M": "Every effort moves you toward finding an ideal life. You don't have to accept your current one at once, because if you do you'll never",
}
# 改这里：两种假装的规模
PRETEND = {
    "小": {"n_vocab": 50257, "n_ctx": 64, "n_embd": 32, "n_head": 2, "n_layer": 2},
    "大": {"n_vocab": 50257, "n_ctx": 64, "n_embd": 64, "n_head": 4, "n_layer": 4},
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


# region 沿用 ch05/main: text_to_token_ids, token_ids_to_text, generate
def text_to_token_ids(text, tokenizer):
    """文本 → 模型的输入，(1, t) 的词元编号。（详解见 ch05/main/example_01_loss.py）"""
    encoded = tokenizer.encode(text, allowed_special={"<|endoftext|>"})
    return torch.tensor(encoded).unsqueeze(0)  # (1, t)


def token_ids_to_text(token_ids, tokenizer):
    """模型的输出 → 文本。（详解见 ch05/main/example_01_loss.py）"""
    return tokenizer.decode(token_ids.squeeze(0).tolist())


def generate(model, idx, max_new_tokens, context_size, temperature=0.0, top_k=None, eos_id=None):
    """逐个生成词元，可以调温度、限制 top-k，遇到结束词元就停。（详解见 ch05/main/example_03_decoding.py）"""
    if not temperature >= 0:
        raise ValueError(f"温度不能是 {temperature}：0 表示贪心，越大越随意")
    if top_k is not None and not 1 <= top_k <= model.out_head.out_features:
        raise ValueError(f"top_k 应在 1 到 {model.out_head.out_features}（词表大小）之间，不能是 {top_k}")
    finished = torch.zeros(len(idx), 1, dtype=torch.bool, device=idx.device)  # (b, 1)
    for _ in range(max_new_tokens):
        idx_cond = idx[:, -context_size:]  # (b, t)
        with torch.no_grad():
            logits = model(idx_cond)  # (b, t, V)
        logits = logits[:, -1, :]  # (b, V)
        if top_k is not None:
            top_logits, _ = torch.topk(logits, top_k)  # (b, top_k)
            min_val = top_logits[:, -1:]  # (b, 1)
            logits = torch.where(logits < min_val, -torch.inf, logits)  # (b, V)
        if temperature > 0.0:
            logits = logits / temperature
            logits = logits - logits.max(dim=-1, keepdim=True).values  # (b, V)
            probs = torch.softmax(logits, dim=-1)  # (b, V)
            idx_next = torch.multinomial(probs, num_samples=1)  # (b, 1)
        else:
            idx_next = torch.argmax(logits, dim=-1, keepdim=True)  # (b, 1)
        if eos_id is not None:
            idx_next = torch.where(finished, eos_id, idx_next)  # (b, 1)
            finished = idx_next == eos_id  # (b, 1)
            if finished.all():
                break
        idx = torch.cat((idx, idx_next), dim=1)  # (b, t + 1)
    return idx


# endregion


# region 沿用 ch05/main: GPT2_SETTINGS, gpt2_shapes, nest_gpt2_params, assign, load_weights_into_gpt
GPT2_SETTINGS = {
    "124M": {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12},
    "355M": {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 1024, "n_head": 16, "n_layer": 24},
    "774M": {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 1280, "n_head": 20, "n_layer": 36},
    "1558M": {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 1600, "n_head": 25, "n_layer": 48},
}


def gpt2_shapes(settings):
    """列出 GPT-2 的权重文件里应有的每一项：名字和形状。（详解见 ch05/main/example_05_openai_weights.py）"""
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


def nest_gpt2_params(tensors, settings):
    """把平铺的"名字 → 张量"，整理成原书的 params：一级一级的字典。（详解见 ch05/main/example_05_openai_weights.py）"""
    params = {"blocks": [{} for _ in range(settings["n_layer"])]}
    for name, tensor in tensors.items():
        parts = name.split(".")
        last = "b" if parts[-1] == "bias" else "g" if parts[-2].startswith("ln") else "w"
        array = tensor.float().numpy()
        if parts[0] == "h":
            inner = params["blocks"][int(parts[1])]
            for part in parts[2:-1]:
                inner = inner.setdefault(part, {})
            inner[last] = array
        elif parts[0] == "ln_f":
            params[last] = array
        else:
            params[parts[0]] = array
    return params


def assign(left, right):
    """把一个数组变成模型的参数；形状不同就报错。（详解见 ch05/main/example_05_openai_weights.py）"""
    if left is None:
        raise ValueError("模型里没有这个偏置：OpenAI 的权重带 Q、K、V 的偏置，建模型时要 qkv_bias=True")
    if left.shape != right.shape:
        raise ValueError(f"形状不同：模型里是 {tuple(left.shape)}，权重是 {tuple(right.shape)}，多半是模型的配置与权重不是一种规模")
    return nn.Parameter(torch.tensor(right, dtype=left.dtype, device=left.device))


def load_weights_into_gpt(gpt, params):
    """把 OpenAI 的权重装进我们的 GPTModel：同样的零件，两边起的名字和摆法不同，逐个对上。（详解见 ch05/main/example_05_openai_weights.py）"""
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
        dense = [(block.att.out_proj, attn["c_proj"]), (block.ff.layers[0], mlp["c_fc"]), (block.ff.layers[2], mlp["c_proj"])]
        for linear, part in dense:
            linear.weight = assign(linear.weight, part["w"].T)
            linear.bias = assign(linear.bias, part["b"])
        for norm, part in [(block.norm1, block_params["ln_1"]), (block.norm2, block_params["ln_2"])]:
            norm.scale = assign(norm.scale, part["g"])  # (d,)
            norm.shift = assign(norm.shift, part["b"])  # (d,)
    gpt.final_norm.scale = assign(gpt.final_norm.scale, params["g"])  # (d,)
    gpt.final_norm.shift = assign(gpt.final_norm.shift, params["b"])  # (d,)
    gpt.out_head.weight = assign(gpt.out_head.weight, params["wte"])  # (V, d)


# endregion


def random_params(settings):
    """一份随机的权重，摆法与 OpenAI 的相同。

    参数:
        settings (dict): 模型的大小

    返回:
        dict: 原书的 params
    """
    torch.manual_seed(123)
    return nest_gpt2_params({name: 0.02 * torch.randn(shape) for name, shape in gpt2_shapes(settings).items()}, settings)


def build(settings, params):
    """照 settings 建模型、装权重：换规模时，这里一行不改。

    参数:
        settings (dict): 模型的大小
        params (dict): 权重

    返回:
        GPTModel: 装好的模型

    异常:
        ValueError: 模型与权重不是一种规模
    """
    gpt = GPTModel(
        {
            "vocab_size": settings["n_vocab"],
            "context_length": settings["n_ctx"],
            "emb_dim": settings["n_embd"],
            "n_heads": settings["n_head"],
            "n_layers": settings["n_layer"],
            "drop_rate": 0.0,
            "qkv_bias": True,
        }
    )
    load_weights_into_gpt(gpt, params)
    return gpt.eval()


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


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def main():
    """算一张表，用同一套代码装两种规模，有真的就让它写。"""
    parser = argparse.ArgumentParser(description="练习 5.6　换成别的规模")
    parser.add_argument("--size", choices=GPT2_SETTINGS, help="让哪种规模写（默认：不写，只算表）")
    parser.add_argument("--quick", action="store_true", help="只写 4 个词元")
    args = parser.parse_args()
    weights = find_data(f"gpt2-{args.size}.pth") if args.size else None

    print("① 四种规模　　　层数　　宽度　　头数　　参数（文件里）　文件　　　装进 GPTModel")
    counted = {}
    for name, settings in GPT2_SETTINGS.items():
        counted[name] = sum(math.prod(shape) for shape in gpt2_shapes(settings).values())
        # 每个数 4 字节。我们的输出层不共享，多 V·d 个；每块还有一个因果掩码，每格 1 字节。
        need = 4 * (counted[name] + settings["n_vocab"] * settings["n_embd"]) + settings["n_layer"] * settings["n_ctx"] ** 2
        shape = f"{settings['n_layer']:8}{settings['n_embd']:9}{settings['n_head']:8}"
        print(f"  {name:<8}{shape}{counted[name]:18,}{counted[name] * 4 / 2**30:9.1f} GB{need / 2**30:11.1f} GB")

    print("\n② 同一套代码，两种假装的规模（权重随机，只为看清改了哪里）")
    tokenizer, models, refusal = tiktoken.get_encoding("gpt2"), {}, ""
    for name, settings in PRETEND.items():
        models[name] = build(settings, random_params(settings))
        print(f"  {name}　{settings['n_layer']} 层、{settings['n_embd']} 维　{sum(p.numel() for p in models[name].parameters()):,} 个参数")
    try:
        build(PRETEND["小"], random_params(PRETEND["大"]))
    except ValueError as error:
        refusal = str(error)
    print(f"  把大的权重装进小的模型：{refusal}")

    text = ""
    if weights:
        ckpt = torch.load(weights, map_location="cpu", weights_only=True)
        model = GPTModel(ckpt["config"])
        model.load_state_dict(ckpt["model"])
        model.eval()
        idx = text_to_token_ids("Every effort moves you", tokenizer)  # (1, t)
        new_tokens, start = 4 if args.quick else 25, time.perf_counter()
        torch.manual_seed(123)
        out = generate(model, idx, new_tokens, ckpt["config"]["context_length"], temperature=1.5, top_k=50)  # (1, t + m)
        seconds, text = (time.perf_counter() - start) / new_tokens, token_ids_to_text(out, tokenizer)
        print(f"\n③ {args.size} 写的：{text!r}\n   每个词元 {seconds:.1f} 秒")
    else:
        print(f"\n③ 原书的 1558M 写的是 {BOOK['1558M']!r}；让它在这里写：--size 1558M")

    print("\n这个数字对吗？")
    confirm("四种规模的参数个数，与公开的逐个相同", counted == PUBLISHED, "gpt2_shapes 里漏了哪一项，或多算了输出层")
    confirm("1558M 的参数是 124M 的 12.5 倍", round(counted["1558M"] / counted["124M"], 1) == 12.5, "宽度或层数抄错了")
    tied = all(torch.equal(gpt.out_head.weight, gpt.tok_emb.weight) for gpt in models.values())
    confirm("换规模不改代码，两个模型的输出层都等于自己的词嵌入", tied, "权重没有装进去")
    confirm("规模写错了会被拒绝，不会装进去再说胡话", "不是一种规模" in refusal, "load_weights_into_gpt 没有核对层数")
    if not text or args.quick:
        return
    if abs(model.tok_emb.weight[-1, -1].item() - 0.12067825) < 1e-6:  # OpenAI 的 124M 才有这个数；别人的权重，不与书比
        confirm("124M 写的与原书 5.5 节一字不差", text == BOOK["124M"], "某个权重装错了地方，或忘了转置")
    elif args.size in BOOK:
        print(f"  原书用 OpenAI 的 {args.size} 写的是 {BOOK[args.size]!r}")


if __name__ == "__main__":
    main()
