"""第 3 章 · 练习 3.1　把 SelfAttention_v2 的权重拷给 v1，输出就该相同

题目：　SelfAttention_v1 自己用 nn.Parameter 建矩阵，v2 用 nn.Linear，公式相同，输出不同只因初始值不同。把 v2 的权重搬到 v1，验证两者输出相同。
先想：　直接 v1.W_query = v2.W_query.weight 行不行？两边的形状各是什么？（先想 10 秒，再运行）
解法：　① 看形状，发现互为转置；② 转置后拷过去；③ 比输出；④ 看看忘了转置会怎样：有时报错，有时不报错但算错。
动手改：1. 把 copy_weights 里的 .T 去掉：默认的大小（3 → 2）报错；--d-out 3 时不报错，但输出不同，有一条自查变成 ✗。
        2. 把 copy_weights 里的 v1_weight.copy_(v2_weight.T) 换成 v1_weight.data = v2_weight.T：输出相同，但"改 v2 不影响 v1"变成 ✗，
           因为 .T 没有复制，两个模型从此共用一块内存。原书的写法 nn.Parameter(v2.W_query.weight.T) 也是共用的。

运行：
    python ch03/experiments/exercise_3_1_copy_weights.py
    python ch03/experiments/exercise_3_1_copy_weights.py --d-out 3
    约 1 秒，0.3 GB（2 核 CPU）

形状记号：t 序列长度　d_in、d_out 进出的嵌入维度
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


# region 沿用 ch03/main: SelfAttention_v1, SelfAttention_v2
class SelfAttention_v1(nn.Module):
    """一个头的自注意力，权重矩阵自己用 nn.Parameter 建。（详解见 ch03/main/example_02_trainable_attention.py）"""

    def __init__(self, d_in, d_out):
        super().__init__()
        self.W_query = nn.Parameter(torch.rand(d_in, d_out))
        self.W_key = nn.Parameter(torch.rand(d_in, d_out))
        self.W_value = nn.Parameter(torch.rand(d_in, d_out))

    def forward(self, x):
        queries = x @ self.W_query  # (t, d_out)
        keys = x @ self.W_key  # (t, d_out)
        values = x @ self.W_value  # (t, d_out)
        scores = queries @ keys.T  # (t, t)
        weights = torch.softmax(scores / keys.shape[-1] ** 0.5, dim=-1)  # (t, t)
        return weights @ values  # (t, d_out)


class SelfAttention_v2(nn.Module):
    """一个头的自注意力，权重矩阵换成 nn.Linear。（详解见 ch03/main/example_02_trainable_attention.py）"""

    def __init__(self, d_in, d_out, qkv_bias=False):
        super().__init__()
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)

    def forward(self, x):
        queries = self.W_query(x)  # (t, d_out)
        keys = self.W_key(x)  # (t, d_out)
        values = self.W_value(x)  # (t, d_out)
        scores = queries @ keys.T  # (t, t)
        weights = torch.softmax(scores / keys.shape[-1] ** 0.5, dim=-1)  # (t, t)
        return weights @ values  # (t, d_out)


# endregion


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def copy_weights(sa_v2, sa_v1):
    """把 v2 的三个矩阵拷进 v1。

    参数:
        sa_v2 (nn.Module): 来源，权重是 (d_out, d_in)
        sa_v1 (nn.Module): 去处，权重是 (d_in, d_out)，会被改写
    """
    with torch.no_grad():  # 直接改参数，不该记进计算图
        for name in ("W_query", "W_key", "W_value"):
            v1_weight, v2_weight = getattr(sa_v1, name), getattr(sa_v2, name).weight
            # nn.Linear 算的是 x @ weight.T，v1 算的是 x @ W，所以 W = weight.T。copy_ 把数抄一份，两个模型互不相干。
            v1_weight.copy_(v2_weight.T)  # (d_in, d_out)


def main():
    """先比形状，再拷贝，再比输出。"""
    parser = argparse.ArgumentParser(description="练习 3.1　把 v2 的权重拷给 v1")
    parser.add_argument("--d-out", type=int, default=2, help="输出维度（默认：2，与原书相同；3 时权重是方阵）")
    args = parser.parse_args()
    if not 1 <= args.d_out <= 1000:
        parser.error(f"--d-out 应在 1 到 1000 之间，不能是 {args.d_out}")
    d_in, d_out = inputs.shape[1], args.d_out

    torch.manual_seed(123)
    sa_v1 = SelfAttention_v1(d_in, d_out)
    torch.manual_seed(789)  # 与原书 3.4.2 节相同
    sa_v2 = SelfAttention_v2(d_in, d_out)
    print(f"① 形状　v1.W_query {tuple(sa_v1.W_query.shape)}　v2.W_query.weight {tuple(sa_v2.W_query.weight.shape)}　互为转置")
    target = sa_v2(inputs).detach()  # (t, d_out)
    before = (sa_v1(inputs) - target).abs().max().item()

    copy_weights(sa_v2, sa_v1)
    copied = sa_v1(inputs).detach()  # (t, d_out)
    after = (copied - target).abs().max().item()
    print(f"② 拷贝前后，两者的输出最多相差 {before:.4f} → {after:.1e}")
    print("③ v1 拷贝之后的输出 (t, d_out)")
    print(copied)
    print("   v2 的输出")
    print(target)

    # ④ 忘了转置。形状不同时立刻报错，是好事；方阵（GPT 里 d_in = d_out）不报错，结果却是错的。
    print("④ 忘了转置会怎样")
    for size in (2, d_in):
        weight = torch.rand(size, d_in)  # 冒充 nn.Linear 的 weight：(d_out, d_in)
        try:
            wrong = inputs @ weight  # (t, d_in)
            print(f"  {d_in} → {size}　不报错，但与正确的结果最多相差 {(wrong - inputs @ weight.T).abs().max().item():.2f}")
        except RuntimeError as error:
            print(f"  {d_in} → {size}　RuntimeError: {error}")

    with torch.no_grad():
        sa_v2.W_query.weight.mul_(10)  # 改 v2，看 v1 变不变
    independent = torch.equal(sa_v1(inputs), copied)

    print("\n这个数字对吗？")
    confirm(f"拷贝之前不同（{before:.4f}），之后相同（{after:.1e}）", after < 1e-5 < before, "忘了转置，或漏拷了一个矩阵")
    confirm("改 v2 不影响 v1：是拷贝，不是共用", independent, "用 .T 直接赋值，两边共用一块内存")
    if d_out == 2:
        book = torch.tensor([-0.0739, 0.0713])
        confirm("第一行与原书 3.4.2 节 v2 的输出相同：[-0.0739, 0.0713]", torch.allclose(copied[0], book, atol=1e-4), "种子不是 789")

    print("\n学到什么")
    print("  nn.Linear 存的 weight 是 (输出, 输入)，与纸上写的 x @ W 互为转置：在不同实现之间搬权重时，先比形状。")
    print("  方阵忘了转置不会报错：搬完一定要比输出。第 5 章加载 GPT-2 的权重，就有这个坑。")


if __name__ == "__main__":
    main()
