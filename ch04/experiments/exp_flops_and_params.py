"""第 4 章 · 实验　参数放在哪里，计算花在哪里？

问题：　GPT-2 的每个部件，占多少参数，又占多少次运算（FLOPs）？两边的排名一样吗？
先猜：　词嵌入占 small 参数的四分之一，它占多少运算？注意力里，没有参数的那一步（QKᵀ、加权）占多少？（先想 10 秒，再运行）
看点：　① 词嵌入参数很多，运算一次也没有：查表不用算；② 注意力分数没有参数，运算却不少，而且随长度平方增长；
        ③ 公式算出的，与 PyTorch 自己数出来的一次不差；④ 反向传播的运算，是前向的几倍。
动手改：1. --tokens 4608：small 的注意力分数，与块里所有线性层一样多（长度到 6d 时正好打平，6 × 768 = 4608）。
        2. 把沿用的 FeedForward 里两处 4 * 改成 2 *：公式没跟着改，与公式对照的、与原书对照的自查都变成 ✗。
        3. --batch 8：每个部件的运算都变成 4 倍，占比一点不变，参数也不变。

运行：
    python ch04/experiments/exp_flops_and_params.py                 # 图片写到 ch04/outputs/
    python ch04/experiments/exp_flops_and_params.py --tokens 4608 --batch 1
    约 6 秒，0.4 GB（2 核 CPU）；模型建在 meta 上，只有形状，没有数

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　k 每个头的维度　V 词表大小
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from torch.utils.flop_counter import FlopCounterMode

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
BASE = {"vocab_size": 50257, "context_length": 1024, "drop_rate": 0.0, "qkv_bias": False}
SIZES = {  # 嵌入维度、块数、头数
    "small": {"emb_dim": 768, "n_layers": 12, "n_heads": 12},
    "medium": {"emb_dim": 1024, "n_layers": 24, "n_heads": 16},
    "large": {"emb_dim": 1280, "n_layers": 36, "n_heads": 20},
    "xl": {"emb_dim": 1600, "n_layers": 48, "n_heads": 25},
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


def by_formula(cfg, b, t):
    """纸笔能算的：每个部件的参数和前向的运算。

    一个 (m, n) 的矩阵乘 (n, p)，每个结果要 n 次乘、n 次加，共 2mnp 次。所以线性层的运算 = 2 × 参数 × 词元数。

    参数:
        cfg (dict): 模型配置
        b (int): 批大小
        t (int): 序列长度

    返回:
        dict: 部件 → （参数，运算）；与 PyTorch 的计数器一样，只算矩阵乘法，逐个数的运算（GELU、softmax、归一化）不算
    """
    d, layers, vocab, n = cfg["emb_dim"], cfg["n_layers"], cfg["vocab_size"], b * t
    return {
        "词嵌入": (vocab * d, 0),  # 查表：按编号取一行，没有乘法
        "位置嵌入": (cfg["context_length"] * d, 0),
        # Q、K、V、out_proj 四个 (d, d)；只有 out_proj 带偏置，偏置是加法，计数器不算
        "注意力的投影": (layers * (4 * d * d + d), layers * 2 * 4 * d * d * n),
        # QKᵀ：每个头 (t, k) 乘 (k, t)，h 个头合起来 2 t² d；权重乘 V 又是 2 t² d。没有参数。掩码挡住的一半也照样算了。
        "注意力分数": (0, layers * 4 * t * t * d * b),
        "前馈网络": (layers * (8 * d * d + 5 * d), layers * 2 * 8 * d * d * n),  # d → 4d → d，偏置 4d + d
        "归一化": ((2 * layers + 1) * 2 * d, 0),
        "输出层": (vocab * d, 2 * vocab * d * n),
    }


def by_counter(cfg, b, t, backward=False):
    """让 PyTorch 自己数：在 meta 设备上跑一遍，形状都对，一个数也不算。

    参数:
        cfg (dict): 模型配置
        b (int): 批大小
        t (int): 序列长度
        backward (bool): 连反向传播一起数，这时只有合计

    返回:
        dict: 部件 → （参数，运算）；backward 为 True 时是一个 int，前向加反向的合计
    """
    with torch.device("meta"):
        model = GPTModel(cfg)
        idx = torch.zeros(b, t, dtype=torch.long)
    # 旧版要把模型交给它，才会按模块分开数；新版自己会，交给它反而要警告。
    old = tuple(int(number) for number in torch.__version__.split(".")[:2]) < (2, 4)
    with FlopCounterMode(model if old else None, display=False) as counter:
        logits = model(idx)  # (b, t, V)
        if backward:
            logits.sum().backward()
    if backward:
        return counter.get_total_flops()
    # 计数器按模块的名字分开记，如 "GPTModel.trf_blocks.3.att.W_query"；没有矩阵乘法的模块，里面没有记录。
    counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}

    def flops(*names):
        return sum(counts.get(f"GPTModel.{name}", 0) for name in names)

    def params(module):
        return sum(p.numel() for p in module.parameters())

    blocks = range(cfg["n_layers"])
    linears = flops(*[f"trf_blocks.{i}.att.{name}" for i in blocks for name in ("W_query", "W_key", "W_value", "out_proj")])
    norms = [model.final_norm, *[norm for block in model.trf_blocks for norm in (block.norm1, block.norm2)]]
    return {
        "词嵌入": (params(model.tok_emb), flops("tok_emb")),
        "位置嵌入": (params(model.pos_emb), flops("pos_emb")),
        "注意力的投影": (sum(params(block.att) for block in model.trf_blocks), linears),
        "注意力分数": (0, flops(*[f"trf_blocks.{i}.att" for i in blocks]) - linears),  # att 里面，不属于那四个线性层的
        "前馈网络": (sum(params(block.ff) for block in model.trf_blocks), flops(*[f"trf_blocks.{i}.ff" for i in blocks])),
        "归一化": (sum(map(params, norms)), flops("final_norm", *[f"trf_blocks.{i}.norm{n}" for i in blocks for n in (1, 2)])),
        "输出层": (params(model.out_head), flops("out_head")),
    }


def draw(results, path):
    """左：每种规模，参数和运算各放在哪里；右：注意力分数占的运算，随长度怎样变。

    参数:
        results (dict): 规模 → by_counter 的结果
        path (Path): 图片写到哪里
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.9), width_ratios=[3, 2], layout="constrained")
    names = [f"{size} {kind}" for size in results for kind in ("参数", "运算")]
    begin = [0.0] * len(names)
    for part in next(iter(results.values())):
        shares = [100 * parts[part][kind] / sum(each[kind] for each in parts.values()) for parts in results.values() for kind in (0, 1)]
        if max(shares) > 0.3:  # 归一化不到千分之一，画不出来
            left.barh(names, shares, left=begin, label=part)
        begin = [a + b for a, b in zip(begin, shares)]
    left.invert_yaxis()
    left.set_xlim(0, 100)
    left.set_xlabel("占百分之几")
    figure.legend(loc="outside lower center", ncols=6, fontsize=8)
    lengths = [2**i for i in range(7, 16)]
    for size in results:
        shares = []
        for t in lengths:
            parts = by_formula(BASE | SIZES[size], 1, t)
            shares.append(100 * parts["注意力分数"][1] / sum(flops for _, flops in parts.values()))
        right.plot(lengths, shares, marker=".", label=f"{size}，d = {SIZES[size]['emb_dim']}")
    right.set_xscale("log", base=2)
    right.set_xlabel("序列长度 t")
    right.set_ylabel("注意力分数占运算的百分之几")
    right.legend(fontsize=8)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def main():
    """四种规模，逐个部件地数，公式和计数器对账。"""
    parser = argparse.ArgumentParser(description="实验　参数放在哪里，计算花在哪里")
    parser.add_argument("--tokens", type=int, default=1024, help="序列长度 t（默认：1024）")
    parser.add_argument("--batch", type=int, default=2, help="批大小 b（默认：2）")
    parser.add_argument("--quick", action="store_true", help="只数 small 和 medium")
    args = parser.parse_args()
    for name, high in [("tokens", 65536), ("batch", 4096)]:
        if not 1 <= getattr(args, name) <= high:
            parser.error(f"--{name} 应在 1 到 {high} 之间，不能是 {getattr(args, name)}")
    b, t = args.batch, args.tokens
    sizes = {size: BASE | config | {"context_length": max(BASE["context_length"], t)} for size, config in list(SIZES.items())[: 2 if args.quick else 4]}
    print(f"一次前向：{b} × {t} = {b * t:,} 个词元", flush=True)

    results, formulas = {}, {}
    for size, cfg in sizes.items():
        results[size], formulas[size] = by_counter(cfg, b, t), by_formula(cfg, b, t)
        total, flops = (sum(each[kind] for each in results[size].values()) for kind in (0, 1))
        print(f"\n{size}　d = {cfg['emb_dim']}，{cfg['n_layers']} 块　参数 {total:,}　前向 {flops:.3e} 次运算，每个词元 {flops / b / t / 1e6:.0f} 百万次")
        for part, (params, part_flops) in results[size].items():
            print(f"  {part.ljust(6, '　')}  参数 {params:>13,} {params / total:6.1%}　运算 {part_flops:9.2e} {part_flops / flops:6.1%}")

    small = sizes["small"]
    forward, both = sum(flops for _, flops in results["small"].values()), by_counter(small, b, t, backward=True)
    in_matrices = sum(params for part, (params, flops) in results["small"].items() if flops)  # 参与矩阵乘法的参数：不含两张查表
    linear = forward - results["small"]["注意力分数"][1]
    draw(results, OUTPUTS / "flops_and_params.png")
    print(f"\n图片已写到 {OUTPUTS / 'flops_and_params.png'}")

    print("\n所以（都是这一次数的）：")
    for size, parts in results.items():
        total, flops = (sum(each[kind] for each in parts.values()) for kind in (0, 1))
        most = [max(parts, key=lambda part: parts[part][kind]) for kind in (0, 1)]
        shares = f"参数最多的是{most[0]}（{parts[most[0]][0] / total:.0%}），运算最多的是{most[1]}（{parts[most[1]][1] / flops:.0%}）"
        print(f"  {size}：{shares}；注意力分数没有参数，占运算的 {parts['注意力分数'][1] / flops:.1%}；词嵌入占参数的 {parts['词嵌入'][0] / total:.0%}，运算为 0。")
    print(f"  心算：每个词元、每个参与乘法的参数 2 次（一乘一加），2 × {in_matrices:,} × {b * t:,} = {2 * in_matrices * b * t:.3e}，再加注意力分数，就是 small 的 {forward:.3e}。")
    print(f"  反向传播要对输入、对权重各求一次，前向加反向是前向的 {both / forward:.2f} 倍：「训练一个词元要 6N 次运算」就是这样来的。")
    crossing = 6 * small["emb_dim"]
    print(f"  块里注意力分数与线性层打平的长度：4 t² d = 24 d² t，t = 6d；small 是 {crossing}，现在的 t = {t} 是它的 {t / crossing:.0%}。")

    print("\n这个数字对吗？")
    for size in results:
        wrong = [part for part, counted in results[size].items() if counted != formulas[size][part]]
        confirm(f"{size}：七个部件的参数和运算，公式与计数器一个不差", not wrong, f"{'、'.join(wrong)}的公式或模型改过")
    if "xl" in results:
        totals = [sum(params for params, _ in parts.values()) - max(0, t - 1024) * SIZES[size]["emb_dim"] for size, parts in results.items()]
        confirm("四种规模的参数与练习 4.2 相同：163,009,536 … 1,637,792,000", totals == [163009536, 406212608, 838220800, 1637792000], "配置抄错了")
    ratio = linear / (2 * in_matrices * b * t)
    confirm(f"除了注意力分数，运算 = 2 × 参数 × 词元数（比值 {ratio:.4f}，差的是偏置）", abs(ratio - 1) < 2e-3, "把查表的嵌入也算进去了")
    confirm(f"前向加反向是前向的 3 倍（得到 {both / forward:.4f}）", both == 3 * forward, "有的层没有求梯度")
    if (b, t) == (2, 1024):
        confirm(f"不算注意力分数是 {linear:.1e}，与原书附加材料的 5.1e+11 相同：它用的工具只数线性层", f"{linear:.1e}" == "5.1e+11", "批或长度不同")


if __name__ == "__main__":
    main()
