"""第 3 章 · 练习 3.2　两个头，输出还要是 2 维

题目：　MultiHeadAttentionWrapper(num_heads=2) 的输出是 4 维（两个 2 维拼起来）。只改传进去的参数，不改类，让输出变回 2 维。
先想：　输出维度 = 头数 × 每个头的 d_out，那么该改谁、改成几？两列的数会与 4 维时的前两列相同吗？（先想 10 秒，再运行）
解法：　① d_out 改成 1；② 看形状和数字；③ 原书仓库里贴的答案与它不同，找出差在哪里：旧代码的 softmax 沿错了方向。
动手改：1. --d-total 4：就是书上 3.6.1 节的设置，第一行变回 [-0.4519, 0.2216, 0.4772, 0.1063]。
        2. 把下面 OldCausalAttention 里的 dim=1 改成 dim=2：它就与 CausalAttention 相同了，两张表一样，最后两条自查变成 ✗。

运行：
    python ch03/experiments/exercise_3_2_two_dimensional_wrapper.py
    python ch03/experiments/exercise_3_2_two_dimensional_wrapper.py --heads 4 --d-total 8
    约 1 秒，0.3 GB（2 核 CPU）

形状记号：b 批大小　t 序列长度　d_in、d_out 进出的嵌入维度，d_out 是每个头的　h 头数
"""

import argparse

import torch
import torch.nn as nn

inputs = torch.tensor(
    [
        [0.43, 0.15, 0.89],  # Your
        [0.55, 0.87, 0.66],  # journey
        [0.57, 0.85, 0.64],  # starts
        [0.22, 0.58, 0.33],  # with
        [0.77, 0.25, 0.10],  # one
        [0.05, 0.80, 0.55],  # step
    ]
)  # (t, d_in) = (6, 3)


# region 沿用 ch03/main: CausalAttention, MultiHeadAttentionWrapper
class CausalAttention(nn.Module):
    """一个头的因果自注意力：SelfAttention_v2 加上批、因果掩码和 dropout。（详解见 ch03/main/example_03_causal_attention.py）"""

    def __init__(self, d_in, d_out, context_length, dropout, qkv_bias=False):
        super().__init__()
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("mask", torch.triu(torch.ones(context_length, context_length, dtype=torch.bool), diagonal=1))

    def forward(self, x):
        b, t, _ = x.shape
        queries = self.W_query(x)  # (b, t, d_out)
        keys = self.W_key(x)  # (b, t, d_out)
        values = self.W_value(x)  # (b, t, d_out)
        scores = queries @ keys.transpose(1, 2)  # (b, t, t)
        scores.masked_fill_(self.mask[:t, :t], -torch.inf)
        weights = torch.softmax(scores / keys.shape[-1] ** 0.5, dim=-1)  # (b, t, t)
        weights = self.dropout(weights)
        return weights @ values  # (b, t, d_out)


class MultiHeadAttentionWrapper(nn.Module):
    """把 h 个单头因果注意力并排放，输出左右拼接起来。（详解见 ch03/main/example_04_multihead_wrapper.py）"""

    def __init__(self, d_in, d_out, context_length, dropout, num_heads, qkv_bias=False):
        super().__init__()
        self.heads = nn.ModuleList([CausalAttention(d_in, d_out, context_length, dropout, qkv_bias) for _ in range(num_heads)])

    def forward(self, x):
        return torch.cat([head(x) for head in self.heads], dim=-1)  # (b, t, h × d_out)


# endregion


class OldCausalAttention(CausalAttention):
    """旧写法：softmax 沿第 1 维，也就是让每一列（每个被看的词）加起来等于 1。只用来复现过时的答案。"""

    def forward(self, x):
        """前向传播，与 CausalAttention 只差一个 dim。

        参数:
            x (Tensor): (b, t, d_in)

        返回:
            Tensor: (b, t, d_out)
        """
        t = x.shape[1]
        keys = self.W_key(x)  # (b, t, d_out)
        scores = self.W_query(x) @ keys.transpose(1, 2)  # (b, t, t)
        scores.masked_fill_(self.mask[:t, :t], -torch.inf)
        # 没有批的时候，分数是 (t, t)，dim=1 就是最后一维，对；有了批变成 (b, t, t)，dim=1 成了查询那一维，错，而且不报错。
        weights = torch.softmax(scores / keys.shape[-1] ** 0.5, dim=1)  # (b, t, t)
        return weights @ self.W_value(x)  # (b, t, d_out)


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def main():
    """建好 wrapper，看形状和数字，再复现原书仓库里过时的答案。"""
    parser = argparse.ArgumentParser(description="练习 3.2　两个头，输出 2 维")
    parser.add_argument("--heads", type=int, default=2, help="头数（默认：2，与题目相同）")
    parser.add_argument("--d-total", type=int, default=2, help="拼起来之后的输出维度（默认：2，与题目相同）")
    args = parser.parse_args()
    if not (1 <= args.heads <= 1000 and 1 <= args.d_total <= 10000):
        parser.error("--heads 应在 1 到 1000 之间，--d-total 应在 1 到 10000 之间")
    if args.d_total % args.heads != 0:
        parser.error(f"输出 {args.d_total} 维，没法平均分给 {args.heads} 个头")

    batch = torch.stack((inputs, inputs), dim=0)  # (b, t, d_in) = (2, 6, 3)
    context_length = batch.shape[1]
    d_in, d_out = batch.shape[2], args.d_total // args.heads  # ① d_out 是每个头的，所以除以头数
    print(f"① 每个头 d_out = {args.d_total} / {args.heads} = {d_out}")

    torch.manual_seed(123)
    mha = MultiHeadAttentionWrapper(d_in, d_out, context_length, 0.0, num_heads=args.heads)
    context_vecs = mha(batch).detach()  # (b, t, h · d_out)
    print(f"② 输出 {tuple(context_vecs.shape)}　(b, t, h · d_out)")
    print(context_vecs[0])

    # ③ 原书仓库的参考答案贴的是 [-9.1476e-02, 3.4164e-02] …，与现在的代码对不上。同样的种子、同样的权重，
    #    只把 softmax 的 dim 换成 1，就逐位得到它：那是早期代码的输出，后来代码改对了，答案忘了重跑。
    torch.manual_seed(123)
    old = nn.ModuleList([OldCausalAttention(d_in, d_out, context_length, 0.0) for _ in range(args.heads)])
    stale = torch.cat([head(batch) for head in old], dim=-1).detach()  # (b, t, h · d_out)
    print("③ 旧写法（softmax 沿 dim=1）的输出")
    print(stale[0])

    # 怎样判断哪个对？因果注意力的第一个词只能看自己，权重是 1，输出就是它自己的值。
    first_value = torch.cat([head.W_value(batch[0, :1]) for head in mha.heads], dim=-1).detach()  # (1, h · d_out)
    error, old_error = [(each[0, :1] - first_value).abs().max().item() for each in (context_vecs, stale)]
    print(f"第一个词的输出应当等于它自己的值 {[round(v, 4) for v in first_value[0, :4].tolist()]}：现在的相差 {error:.1e}，旧写法相差 {old_error:.2f}")

    print("\n这个数字对吗？")
    confirm(f"输出的形状是 (2, 6, {args.d_total})", tuple(context_vecs.shape) == (2, 6, args.d_total), "d_out 是每个头的，不是总的")
    confirm("第一个词只看自己", error < 1e-6, "softmax 的 dim 不是最后一维，或没有因果掩码")
    if (args.heads, args.d_total) == (2, 2):
        ours = torch.tensor([[-0.5740, 0.2216], [-0.7320, 0.0155], [-0.7774, -0.0546], [-0.6979, -0.0817], [-0.6538, -0.0957], [-0.6424, -0.1065]])
        confirm("六行是 -0.5740 0.2216 … -0.6424 -0.1065", torch.allclose(context_vecs[0], ours, atol=1e-4), "种子不是 123，或各层创建的次序不同")
        book = torch.tensor([[-0.0915, 0.0342], [-0.2680, -0.0013], [-0.4842, -0.0489], [-0.6481, -0.1063], [-0.8838, -0.1714], [-1.4744, -0.3433]])
        confirm("旧写法逐位得到原书仓库贴的答案：-0.0915 0.0342 … -1.4744 -0.3433", torch.allclose(stale[0], book, atol=1e-4), "旧写法的 dim 不是 1")
        confirm("旧写法的第一个词看到的不只是自己", old_error > 0.1, "旧写法的 dim 不是 1")

    print("\n学到什么")
    print("  MultiHeadAttentionWrapper 的 d_out 是每个头的，输出是 头数 × d_out；MultiHeadAttention 的 d_out 是总的，两者别混。")
    print("  softmax 写 dim=-1，加了批也不会错。答案对不上时，先找一个从道理上必然成立的性质来判断谁对。")


if __name__ == "__main__":
    main()
