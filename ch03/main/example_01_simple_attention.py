"""第 3 章 · 3.3 节　最简单的自注意力：没有任何可训练参数

读完你应该能回答：
    1. "一个词的上下文向量"是什么？它和词嵌入差在哪里？
    2. 点积为什么能衡量"相关"？softmax 在这里起什么作用？
    3. 两重循环为什么可以换成一次矩阵乘法？

运行：
    python ch03/main/example_01_simple_attention.py
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 1 秒，0.2 GB（2 核 CPU）

形状记号（全书统一）：t 序列长度（token 数）　d 嵌入维度
"""

import sys

import torch


# region 沿用 setup/self_check.py: safe_console, confirm
def safe_console():
    """让不支持 UTF-8 的终端也能运行本项目的脚本：印不出的字符换成 ?，而不是报错退出。（详解见 setup/self_check.py）"""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


safe_console()

# %% 3.3.0　输入：6 个词，每个词一个 3 维嵌入
# 真实模型的嵌入是几百上千维，而且由训练得到；这里用 3 维的固定数字，是为了每一步都能手算核对。
inputs = torch.tensor(
    [
        [0.43, 0.15, 0.89],  # Your
        [0.55, 0.87, 0.66],  # journey
        [0.57, 0.85, 0.64],  # starts
        [0.22, 0.58, 0.33],  # with
        [0.77, 0.25, 0.10],  # one
        [0.05, 0.80, 0.55],  # step
    ]
)  # (t, d) = (6, 3)
print(f"【3.3】输入　{tuple(inputs.shape)}　(t, d)")

# %% 3.3.1　只算一个词：以第 2 个词 journey 为查询（query）
query = inputs[1]  # (d,)

# 注意力分数 = 查询与每个词的点积。两个向量方向越接近、越长，点积越大：这里用它表示"越相关"。
scores_2 = torch.empty(inputs.shape[0])
for i, x_i in enumerate(inputs):
    scores_2[i] = torch.dot(x_i, query)
print("\n【3.3.1】journey 对 6 个词的注意力分数")
print(scores_2)

# %% 分数 → 权重：让它们都为正、加起来等于 1，才能当"比例"用
# 直接除以总和也能归一化，但分数为负或悬殊时会出怪事；softmax 永远为正，而且拉开差距、便于求梯度。
weights_2_naive = scores_2 / scores_2.sum()
weights_2 = torch.softmax(scores_2, dim=0)
print("除以总和：", weights_2_naive)
print("softmax ：", weights_2, " 总和", weights_2.sum().item())

# %% 上下文向量：按权重把 6 个词的嵌入加起来
# 它还是 3 维，但已经不是 journey 自己了，而是"journey 在这句话里的意思"：掺进了它所关注的词。
context_2 = torch.zeros(query.shape)
for i, x_i in enumerate(inputs):
    context_2 += weights_2[i] * x_i
print("journey 的上下文向量", context_2)

# %% 3.3.2　一次算完所有词：两重循环 = 一次矩阵乘法
# inputs @ inputs.T 的第 i 行第 j 列，正好是第 i 个词与第 j 个词的点积。
scores = inputs @ inputs.T  # (t, t)
weights = torch.softmax(scores, dim=-1)  # (t, t)　dim=-1：对每一行（每个查询）各自归一化
contexts = weights @ inputs  # (t, d)
print("\n【3.3.2】注意力分数 (t, t)")
print(scores)
print("注意力权重 (t, t)，每行之和：", weights.sum(dim=-1))
print("所有词的上下文向量 (t, d)")
print(contexts)


# %% 这个数字对吗？
print("\n这个数字对吗？")
confirm("每行权重之和为 1", torch.allclose(weights.sum(dim=-1), torch.ones(6)), "softmax 的 dim 写成了 0")
confirm("矩阵写法与循环写法结果相同", torch.allclose(contexts[1], context_2), "权重与输入的相乘顺序反了")
confirm("journey 的上下文向量与原书一致：[0.4419, 0.6515, 0.5683]", torch.allclose(context_2, torch.tensor([0.4419, 0.6515, 0.5683]), atol=1e-4), "输入的数字抄错了")

# %% 动手改
# 1. 把 query 换成 inputs[0]，先猜 Your 最关注谁，再运行。
# 2. 把 inputs 整体乘以 10，看 softmax 权重怎样变成"赢者通吃"：这就是后面要除以 √k 的原因。
