"""第 4 章 · 练习 4.1　一个块里，前馈网络和注意力谁的参数多？

题目：　数一数一个 Transformer 块里，前馈网络和多头注意力各有多少个可训练的参数，比一比。
先想：　这个架构因"注意力"出名，参数的大头也在注意力里吗？（先想 10 秒，再运行）
解法：　① 建一个块，分部件数；② 对着公式看为什么；③ 换几个嵌入维度，看比例变不变。
动手改：1. 把沿用的 FeedForward 里两处 4 * 都改成 2 *：前馈变成 4d² + 3d，与注意力几乎一样多（1.0007 倍），三条自查变成 ✗。
        2. 把 qkv_bias 改成 True（加载 OpenAI 的权重时就是这样）：注意力多 3d = 2304 个，只有千分之一，可是对不上书上的数了。

运行：
    python ch04/experiments/exercise_4_1_block_parameters.py
    python ch04/experiments/exercise_4_1_block_parameters.py --emb-dim 12288    # GPT-3 那么宽
    约 3 秒，0.3 GB（2 核 CPU）

形状记号：d 嵌入维度
"""

import argparse

import torch
import torch.nn as nn


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


# region 沿用 ch04/main: LayerNorm, GELU, FeedForward, TransformerBlock
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


# endregion


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def count_block(emb_dim):
    """建一个块，分部件数参数。

    参数:
        emb_dim (int): 嵌入维度 d，64 的倍数

    返回:
        dict[str, int]: 部件名 → 参数个数
    """
    # 每个头 64 维，GPT-2 各型号都是这样；头数不影响参数量（练习 3.3）。
    cfg = {"emb_dim": emb_dim, "context_length": 1024, "n_heads": emb_dim // 64, "drop_rate": 0.1, "qkv_bias": False}
    with torch.device("meta"):  # 只数个数，不需要真的数：meta 上的张量只有形状，不占内存（练习 4.2 细讲）
        block = TransformerBlock(cfg)
    # 用 numel 数；requires_grad 挑出可训练的。掩码是 buffer，不在 parameters() 里。
    return {name: sum(p.numel() for p in part.parameters() if p.requires_grad) for name, part in block.named_children()}


def main():
    """数一个块，再换几个宽度看比例。"""
    parser = argparse.ArgumentParser(description="练习 4.1　前馈网络与注意力的参数")
    parser.add_argument("--emb-dim", type=int, default=768, help="嵌入维度 d，64 的倍数（默认：768，GPT-2 small）")
    args = parser.parse_args()
    d = args.emb_dim
    if d % 64 != 0 or not 64 <= d <= 10**6:
        parser.error(f"--emb-dim 应是 64 的倍数，在 64 到 100 万之间，不能是 {d}")
    counts = count_block(d)

    # 注意力：W_query、W_key、W_value、out_proj 四个 d × d 的矩阵，只有 out_proj 带偏置。
    # 前馈：d → 4d → d 两个矩阵，各 4d²，都带偏置（4d 和 d）。归一化：scale 和 shift 各 d 个，共两层。
    formulas = {"att": ("4 × d × d + d", 4 * d * d + d), "ff": ("8 × d × d + 5d", 8 * d * d + 5 * d), "norm1": ("2d", 2 * d), "norm2": ("2d", 2 * d)}
    total = sum(counts.values())
    print(f"① 一个块，d = {d}，一共 {total:,} 个参数　② 怎么来的")
    for name, (formula, _) in formulas.items():
        print(f"  {name:<6} {counts[name]:>16,}　{counts[name] / total:6.2%}　{formula}")
    ratio = counts["ff"] / counts["att"]
    print(f"  前馈网络是注意力的 {ratio:.4f} 倍")

    print("③ 换几个宽度（GPT-2 的四种，和 GPT-3 的）")
    ratios = []
    for width in (768, 1024, 1280, 1600, 12288):
        each = count_block(width)
        ratios.append(each["ff"] / each["att"])
        print(f"  d = {width:>5}　att {each['att']:>13,}　ff {each['ff']:>13,}　{ratios[-1]:.4f} 倍")

    print("\n这个数字对吗？")
    confirm("每个部件都与公式相同", all(counts[name] == number for name, (_, number) in formulas.items()), "qkv_bias 不是 False，或前馈不是 4 倍")
    confirm("不论多宽，前馈都约是注意力的 2 倍", all(abs(each - 2) < 0.002 for each in ratios), "前馈不是 4 倍")
    if d == 768:
        same = (counts["att"], counts["ff"]) == (2_360_064, 4_722_432)
        confirm(f"注意力 2,360,064，前馈 4,722,432（得到 {counts['att']:,} 和 {counts['ff']:,}）", same, "qkv_bias 不是 False，或前馈不是 4 倍")

    print("\n学到什么")
    print("  块里三分之二的参数在前馈网络，三分之一在注意力，与宽度无关：8 × d × d 比 4 × d × d。归一化和偏置只有 d 的一次方，宽了就可以忽略。")
    print("  于是一个块约 12 × d × d 个参数，再乘块数：不必建模型，心算就能估出大小（练习 4.2 验证）。")


if __name__ == "__main__":
    main()
