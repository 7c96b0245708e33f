"""第 3 章 · 3.6 节　多头注意力（multi-head attention）

读完、敲完这个脚本，你应该能不看书回答：
    1. 只有一个注意力头时，模型缺了什么？
    2. 为什么"一次大矩阵乘法 + 变形"就等于 h 个小注意力各算各的？
    3. 因果掩码为什么加在 softmax 之前、填的是 -inf，而不是之后填 0？

运行：
    python ch03/main/multihead_attention.py               # 用书中的例子走一遍；每一步的形状看 example_05
    python ch03/main/multihead_attention.py --heads 1     # 换成单头，看看输出差在哪里
    约 2 秒，0.3 GB（2 核 CPU）

形状记号（全书统一）：
    b 批大小　　t 序列长度（词元数）　　d 嵌入维度　　h 头数　　k 每个头的维度（k = d / h）
"""

import argparse

import torch
import torch.nn as nn

# 书中 3.3 节起一直使用的例子："Your journey starts with one step"，每个词一个 3 维向量。
# 维度取 3 只是为了能把每个数都打印出来看，GPT-2 small 用的是 768。
EXAMPLE_INPUTS = [  # 改这里：换成别的数，看输出怎样变（与原书比的两条自查就不再成立了）
    [0.43, 0.15, 0.89],  # Your
    [0.55, 0.87, 0.66],  # journey
    [0.57, 0.85, 0.64],  # starts
    [0.22, 0.58, 0.33],  # with
    [0.77, 0.25, 0.10],  # one
    [0.05, 0.80, 0.55],  # step
]


# region 沿用（含注释） ch03/main: MultiHeadAttention
class MultiHeadAttention(nn.Module):
    """带因果掩码的多头自注意力：h 个头并行计算，再拼接、混合。

    一个头只能学到"一种"关注方式（比如"找主语"）。把 d_out 维切成 h 份，每份各自做注意力，
    就能同时学 h 种关注方式，而总计算量与单个 d_out 维的头几乎相同。

    参数:
        d_in (int): 输入嵌入维度
        d_out (int): 输出维度，是各头加起来的总数，必须能被 num_heads 整除
        context_length (int): 支持的最长序列；掩码按它一次建好，前向时再截取
        dropout (float): 注意力权重的丢弃概率，0.0 表示不丢弃
        num_heads (int): 头数 h
        qkv_bias (bool): Q、K、V 投影是否带偏置；GPT-2 的预训练权重带，所以加载它们时要设为 True

    形状:
        输入 (b, t, d_in) → 输出 (b, t, d_out)，其中 t ≤ context_length

    异常:
        ValueError: d_out 不能被 num_heads 整除

    出处: 原书 3.6.2 节
    """

    def __init__(self, d_in, d_out, context_length, dropout, num_heads, qkv_bias=False):
        super().__init__()
        if d_out % num_heads != 0:
            raise ValueError(f"d_out={d_out} 不能被 num_heads={num_heads} 整除，无法平均分给每个头")

        self.d_out = d_out
        self.num_heads = num_heads
        self.head_dim = d_out // num_heads

        # 一个 (d_in, d_out) 的大矩阵，等于把 h 个 (d_in, k) 的小矩阵左右并排放在一起。
        # GPU 喜欢一次大乘法，不喜欢 h 次小乘法，这就是它比 MultiHeadAttentionWrapper 快的原因。
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)

        # 拼接只是把各头的结果摆在一起，out_proj 才让它们互相"交流"。
        self.out_proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)

        # 掩码不是参数（不参与训练），但要跟着模型一起搬到 MPS/CUDA，所以登记为 buffer。
        # diagonal=1：只有"严格在右上方"的位置为 True（要遮住），每个词元仍然能看到自己。
        self.register_buffer("mask", torch.triu(torch.ones(context_length, context_length, dtype=torch.bool), diagonal=1))

    def forward(self, x):
        """前向传播。

        参数:
            x (Tensor): 输入嵌入，(b, t, d_in)

        返回:
            Tensor: 上下文向量，(b, t, d_out)
        """
        b, t, _ = x.shape

        # ① 投影。每个词元问什么（Q）、能被怎样找到（K）、被找到后交出什么（V）。
        queries = self.W_query(x)  # (b, t, d_out)
        keys = self.W_key(x)  # (b, t, d_out)
        values = self.W_value(x)  # (b, t, d_out)

        # ② 分头。最后一维 d_out 拆成 (h, k)，再把 h 换到 t 前面：
        #    这样 (b, h) 成了"批"维度，后面的矩阵乘法就会对每个头各算一次。
        queries = queries.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        keys = keys.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        values = values.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)

        # ③ 打分。scores[i, j] = 第 i 个词元的 Q 与第 j 个词元的 K 的点积：越大越相关。
        scores = queries @ keys.transpose(2, 3)  # (b, h, t, t)

        # ④ 因果掩码。填 -inf 而不是 0：softmax 里 e^(-inf) = 0，剩下的权重自动仍然加起来等于 1；
        #    如果等 softmax 之后再填 0，每行的和就不是 1 了，还得重新归一化。
        scores.masked_fill_(self.mask[:t, :t], -torch.inf)

        # ⑤ 缩放点积注意力：Attention(Q, K, V) = softmax(QKᵀ / √k) V
        #    除以 √k：k 个独立同分布数的点积，方差会随 k 线性变大；不缩放的话 softmax 会挤成
        #    接近 one-hot，梯度几乎为 0，训练不动。
        weights = torch.softmax(scores / self.head_dim**0.5, dim=-1)  # (b, h, t, t)
        weights = self.dropout(weights)

        # ⑥ 加权求和，再把各头拼回 d_out 维。transpose 之后内存不再连续，view 前要 contiguous。
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
    """用书中的例子跑一遍，结果应与原书 3.6.2 节逐位相同。"""
    parser = argparse.ArgumentParser(description="3.6 节　多头注意力")
    parser.add_argument("--heads", type=int, default=2, help="头数，必须能整除输出维度 2（默认：2，与原书相同）")
    args = parser.parse_args()
    if args.heads < 1:
        parser.error(f"--heads 至少是 1，不能是 {args.heads}")

    torch.manual_seed(123)  # 与原书同一个种子，方便逐位核对
    x = torch.tensor(EXAMPLE_INPUTS)
    batch = torch.stack([x, x])  # 同一句话放两遍，凑成批：两份输出应当完全一样
    try:
        attention = MultiHeadAttention(3, 2, context_length=6, dropout=0.0, num_heads=args.heads)
    except ValueError as error:
        parser.error(str(error))

    context = attention(batch)
    print(f"输入　　　{tuple(batch.shape)}　(b, t, d)")
    print(f"上下文向量{tuple(context.shape)}　(b, t, d_out)")
    print(context)

    print("\n这个数字对吗？")
    same = torch.equal(context[0], context[1])
    confirm("同一句话放两遍，两份输出相同", same, "前向传播里混进了随机性，比如 dropout 没关")
    changed = batch.clone()
    changed[:, -1] = 0  # 抹掉最后一个词；前面的词看不到它，输出就不该变
    same = torch.equal(attention(changed)[:, :-1], context[:, :-1])
    confirm("改动最后一个词，不影响前面的输出", same, "因果掩码没有生效")
    if args.heads == 2:
        # 第一个词只能看自己，权重总是 1，与 Q、K 无关，所以光看第一行查不出 Q、K 的错，还要看第六行。
        same = torch.allclose(context[0, 0], torch.tensor([0.3190, 0.4858]), atol=1e-4)
        confirm("第一行与原书一致：[0.3190, 0.4858]", same, "创建各层的次序不同，随机数就不同")
        same = torch.allclose(context[0, 5], torch.tensor([0.2575, 0.4028]), atol=1e-4)
        confirm("第六行与原书一致：[0.2575, 0.4028]", same, "Q、K 算错了，或 softmax 的 dim 不对")

    # 书上的例子每个头只有 1 维，√1 = 1，忘了除以 √k 也看不出来；所以换大一点的随机数，与 PyTorch 自带的实现再比一次。
    check, x = MultiHeadAttention(8, 8, context_length=6, dropout=0.0, num_heads=2), torch.randn(1, 6, 8) * 3
    heads = [layer(x).view(1, 6, 2, 4).transpose(1, 2) for layer in (check.W_query, check.W_key, check.W_value)]
    built_in = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)  # 每个头 4 维：(b, h, t, k)
    built_in = built_in.transpose(1, 2).reshape(1, 6, 8)  # (b, t, d_out)
    same = torch.allclose(check(x), check.out_proj(built_in), atol=1e-5)
    confirm("与 PyTorch 自带的注意力结果相同（2 个头，每个 4 维）", same, "忘了除以 √k，或掩码、分头、拼回有一步不对")


if __name__ == "__main__":
    main()
