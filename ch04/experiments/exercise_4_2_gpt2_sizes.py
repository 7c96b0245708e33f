"""第 4 章 · 练习 4.2　GPT-2 的 medium、large、XL 各有多大？

题目：　只改配置、不改代码，建出 GPT-2 medium（d = 1024，24 块，16 头）、large（1280，36，20）、XL（1600，48，25），数参数，算内存。
先想：　XL 有 48 块、1600 维，是 small（12 块、768 维）的几倍？共用词嵌入与输出层，哪种规模省得最多？（先想 10 秒，再运行）
解法：　① 四份配置；② 在 meta 设备上建模型，数参数；③ 减去与词嵌入共用的输出层，就是论文里的叫法；④ 乘 4 字节，得到内存；⑤ 与 12nd² 比。
动手改：1. 把 CONFIGS["xl"] 的 n_heads 改成 50：参数一个不变；改成 30 就报错，1600 不能被 30 整除。
        2. CONFIGS 里加一项 "gpt3": (12288, 96, 96)：1752 亿个参数，66.8 万 MB，照样一下就数完，这台电脑一点内存也没多用。

运行：
    python ch04/experiments/exercise_4_2_gpt2_sizes.py
    python ch04/experiments/exercise_4_2_gpt2_sizes.py --size xl
    约 3 秒，0.3 GB（2 核 CPU）；真的建一个 XL 要 6.2 GB

形状记号：d 嵌入维度　V 词表大小
"""

import argparse

import torch
import torch.nn as nn

BASE = {"vocab_size": 50257, "context_length": 1024, "drop_rate": 0.1, "qkv_bias": False}
# 嵌入维度 d、块数、头数。每个头都是 64 维：模型变宽，加的是头。
CONFIGS = {"small": (768, 12, 12), "medium": (1024, 24, 16), "large": (1280, 36, 20), "xl": (1600, 48, 25)}
# 答案：总数、共用时、MB。
ANSWERS = {
    "small": (163_009_536, 124_412_160, "621.83"),
    "medium": (406_212_608, 354_749_440, "1549.58"),
    "large": (838_220_800, 773_891_840, "3197.56"),
    "xl": (1_637_792_000, 1_557_380_800, "6247.68"),
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


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def count(emb_dim, n_layers, n_heads, device="meta"):
    """建一个 GPT，数它的参数。

    参数:
        emb_dim (int): 嵌入维度 d
        n_layers (int): 块数
        n_heads (int): 头数
        device (str): 建在哪里

    返回:
        tuple[int, int]: 参数总数，和输出层与词嵌入共用时的总数

    异常:
        ValueError: emb_dim 不能被 n_heads 整除
    """
    cfg = BASE | {"emb_dim": emb_dim, "n_layers": n_layers, "n_heads": n_heads}
    # meta 是一个假设备：张量只有形状和类型，没有数，所以不占内存，也不花时间取随机数。
    # 这里只问"有几个数"，形状就够了，可以用它；要用到数本身（前向、训练、核对书上的数字）就不行：
    # 从 meta 搬出来的是没有初始化的内存，而且随机数一个也没有取过，后面的随机数全都对不上。
    with torch.device(device):
        model = GPTModel(cfg)
    total = sum(p.numel() for p in model.parameters())
    # tok_emb 是 (V, d)，out_head.weight 也是 (V, d)：共用一份（weight tying），就只数一次。
    return total, total - model.out_head.weight.numel()


def main():
    """数四种规模，与答案比。"""
    parser = argparse.ArgumentParser(description="练习 4.2　GPT-2 的四种规模")
    parser.add_argument("--size", choices=[*CONFIGS, "all"], default="all", help="small、medium、large、xl，或 all（默认：all）")
    args = parser.parse_args()

    results = {}
    for name in CONFIGS if args.size == "all" else [args.size]:
        emb_dim, n_layers, n_heads = CONFIGS[name]
        try:
            total, tied = count(emb_dim, n_layers, n_heads)
        except ValueError as error:
            parser.error(str(error))
        megabytes = total * 4 / 2**20  # float32 每个数 4 字节；1 MB 按 2 的 20 次方字节算
        results[name] = (total, tied, f"{megabytes:.2f}")
        blocks, exact = 12 * n_layers * emb_dim**2, tied - (BASE["vocab_size"] + BASE["context_length"]) * emb_dim
        print(f"{name}　d = {emb_dim}，{n_layers} 块，{n_heads} 头，每头 {emb_dim // n_heads} 维")
        print(f"  总数 {total:,}　共用时 {tied:,}（省 {1 - tied / total:.1%}）　占内存 {megabytes:.2f} MB")
        print(f"  心算：块里约 12 × {n_layers} × {emb_dim} × {emb_dim} = {blocks:,}，实际 {exact:,}，差 {1 - blocks / exact:.2%}")

    print("\n这个数字对吗？")
    for name, result in results.items():
        if name in ANSWERS:
            confirm(f"{name} 与答案相同：{ANSWERS[name][0]:,} / {ANSWERS[name][1]:,} / {ANSWERS[name][2]} MB", result == ANSWERS[name], "配置抄错了，或 MB 按 1000 × 1000 算")
    # 用一个小到不心疼的模型验证 meta：真的建在 CPU 上，数出来相同。
    confirm("meta 上数的，与真的建在 CPU 上数的相同", count(48, 2, 4) == count(48, 2, 4, device="cpu"), "有的参数是前向时才建的")

    print("\n学到什么")
    print("  规模由三个数定：块里约 12 × 块数 × d × d，再加词嵌入 V × d。头数不影响参数量。")
    print("  模型越大，词嵌入占的比例越小，共用省得越少：small 省将近四分之一，XL 只省二十分之一。")
    print("  光是放下权重，XL 就要 6 GB；训练还要梯度和 AdamW 的两份动量，共约 4 倍，还没算激活值。")


if __name__ == "__main__":
    main()
