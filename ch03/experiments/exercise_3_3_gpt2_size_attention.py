"""第 3 章 · 练习 3.3　GPT-2 small 那么大的多头注意力

题目：　用 MultiHeadAttention 建一个与 GPT-2 small 同样大小的：输入输出 768 维，12 个头，上下文长度 1024。
先想：　每个头几维？参数多少个？头数从 12 换成 1，参数会变多还是变少？（先想 10 秒，再运行）
解法：　① 建好；② 数参数，对着公式看是哪四个矩阵；③ 送一段 1024 个词元的输入，看形状，再算一算注意力权重占多少内存。
动手改：1. --heads 1、--heads 24：参数一个也不变，只是拆法不同；--heads 7 会怎样？
        2. 把 d_out 改成 384：参数变成多少？先用公式算再看（1,032,576；四条自查变成 ✗，那是 768 的答案）。

运行：
    python ch03/experiments/exercise_3_3_gpt2_size_attention.py
    python ch03/experiments/exercise_3_3_gpt2_size_attention.py --heads 1
    约 2 秒，0.5 GB（2 核 CPU）

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　k 每个头的维度（k = d / h）
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


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def main():
    """建好，数参数，前向一次。"""
    parser = argparse.ArgumentParser(description="练习 3.3　GPT-2 small 大小的多头注意力")
    parser.add_argument("--heads", type=int, default=12, help="头数，必须能整除 768（默认：12，与 GPT-2 small 相同）")
    args = parser.parse_args()
    if args.heads < 1:
        parser.error(f"--heads 至少是 1，不能是 {args.heads}")

    context_length, d_in, d_out = 1024, 768, 768
    torch.manual_seed(123)
    try:
        mha = MultiHeadAttention(d_in, d_out, context_length, 0.0, args.heads)
    except ValueError as error:
        parser.error(str(error))
    print(f"① {args.heads} 个头，每个 {mha.head_dim} 维（k = {d_out} / {args.heads}）")

    print("② 参数")
    for name, parameter in mha.named_parameters():
        print(f"  {name:<15} {str(tuple(parameter.shape)):<11} {parameter.numel():>9,}")
    num_params = sum(p.numel() for p in mha.parameters() if p.requires_grad)
    # Q、K、V 三个矩阵不带偏置；out_proj 带。公式里没有 h：分头只是换个读法，不多一个参数。
    formula = 3 * d_in * d_out + d_out * d_out + d_out
    print(f"  一共 {num_params:,} = 3 × {d_in} × {d_out} + {d_out} × {d_out} + {d_out}")

    x = torch.rand(1, context_length, d_in)  # (b, t, d)
    with torch.no_grad():
        output = mha(x)  # (b, t, d)
    # 参数只占 9 MB，而 (b, h, t, t) 的注意力权重每句话就要几十 MB：长文本费内存，费在这里，而且随 t 的平方增长。
    weights_mb = args.heads * context_length**2 * 4 / 2**20
    print(f"③ 输入 {tuple(x.shape)} → 输出 {tuple(output.shape)}　(b, t, d)")
    print(f"  参数占 {num_params * 4 / 2**20:.1f} MB；注意力权重 (b, h, t, t) = (1, {args.heads}, 1024, 1024)，占 {weights_mb:.0f} MB")
    mask = mha.mask  # 掩码不训练，所以不算参数，但也要占地方
    print(f"  掩码 {tuple(mask.shape)} 不是参数，占 {mask.numel() * mask.element_size() / 2**20:.0f} MB")

    print("\n这个数字对吗？")
    confirm(f"参数是 2,360,064 个（得到 {num_params:,}）", num_params == formula == 2_360_064, "qkv_bias 设成了 True（多 2304 个），或把掩码也数进去了")
    confirm("k × h = 768", mha.head_dim * args.heads == 768, "头数不能整除 768")
    confirm("输出的形状与输入相同", output.shape == x.shape, "d_out 不是 768")
    if args.heads == 12:
        confirm(f"与 GPT-2 各型号一样，每个头 64 维（得到 {mha.head_dim}）", mha.head_dim == 64, "头数不是 12")

    print("\n学到什么")
    print("  头数不改变参数量：768 × 768 的矩阵还是那么大，只是拆成 h 份来读。改变的是同时有几种关注方式，以及注意力权重占多少内存。")
    print("  一个块里的注意力是 236 万个参数；GPT-2 small 有 12 个块，合计 2832 万，还不到总数的五分之一（练习 4.1、4.2 接着数）。")


if __name__ == "__main__":
    main()
