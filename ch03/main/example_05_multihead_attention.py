"""第 0 章 · 待写
"""

import torch
import torch.nn as nn


class MultiHeadAttention(nn.Module):
    """带因果掩码的多头自注意力：h 个头并行计算，再拼接、混合。

    一个头只能学到"一种"关注方式（比如"找主语"）。把 d 维切成 h 份，每份各自做注意力，
    就能同时学 h 种关注方式，而总计算量与单个 d 维的头几乎相同。

    参数:
        d_in (int): 输入嵌入维度
        d_out (int): 输出维度，必须能被 num_heads 整除
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
        # diagonal=1：只有"严格在右上方"的位置为 True（要遮住），token 仍然能看到自己。
        self.register_buffer("mask", torch.triu(torch.ones(context_length, context_length, dtype=torch.bool), diagonal=1))

    def forward(self, x):
        """前向传播。

        参数:
            x (Tensor): 输入嵌入，(b, t, d_in)

        返回:
            Tensor: 上下文向量，(b, t, d_out)
        """
        b, t, _ = x.shape

        # ① 投影。每个 token 问什么（Q）、能被怎样找到（K）、被找到后交出什么（V）。
        queries = self.W_query(x)  # (b, t, d_out)
        keys = self.W_key(x)  # (b, t, d_out)
        values = self.W_value(x)  # (b, t, d_out)

        # ② 分头。最后一维 d_out 拆成 (h, k)，再把 h 换到 t 前面：
        #    这样 (b, h) 成了"批"维度，后面的矩阵乘法就会对每个头各算一次。
        queries = queries.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        keys = keys.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        values = values.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)

        # ③ 打分。scores[i, j] = 第 i 个 token 的 Q 与第 j 个 token 的 K 的点积：越大越相关。
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


# %% 待写
