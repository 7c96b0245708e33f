"""第 3 章 · 3.3 节　最简单的自注意力：没有任何可训练参数

读完你应该能回答：
    1. "一个词的上下文向量"是什么？它和词嵌入差在哪里？
    2. 点积为什么能衡量"相关"？softmax 在这里起什么作用？
    3. 两重循环为什么可以换成一次矩阵乘法？

运行：
    python ch03/main/example_01_simple_attention.py
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 2 秒，0.3 GB（2 核 CPU）

形状记号（全书统一）：t 序列长度（词元数）　d 嵌入维度
"""

import torch

QUERY = 1  # 改这里：哪个词去看别的词，从 0 数；书里选第 2 个词 journey，即 1


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion

# %% 3.3　输入：6 个词，每个词一个 3 维嵌入
# 模型读的是词元（token），一个词可能是几个词元；这一章的例句很简单，一个词就是一个词元，所以下面直说"词"。
# 真实模型的嵌入是几百上千维，而且由训练得到；这里用 3 维的固定数字，是为了每一步都能手算核对。
words = ["Your", "journey", "starts", "with", "one", "step"]
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

# %% 3.3.1　先只算一个词：它去看 6 个词，所以叫查询（query）
word, query = words[QUERY], inputs[QUERY]  # query 的形状是 (d,)；下面名字里的 2 指第 2 个词，与书上相同

# 注意力分数（attention score）= 查询与每个词的点积。两个向量方向越接近、越长，点积越大：这里用它表示"越相关"。
scores_2 = torch.empty(inputs.shape[0])
for i, x_i in enumerate(inputs):
    scores_2[i] = torch.dot(x_i, query)
print(f"\n【3.3.1】{word} 对 6 个词的注意力分数")
print(scores_2)

# %% 点积（dot product）是什么：对应位置相乘，再全部加起来
dot_by_hand = 0.0
for x, q in zip(inputs[0], query):
    dot_by_hand += x * q
print(f"Your · {word}　逐个相乘再相加", dot_by_hand, " torch.dot", torch.dot(inputs[0], query))

# %% 分数 → 权重：让它们都为正、加起来等于 1，才能当"比例"用
# 最省事的办法是除以总和。但点积可以是负数，一正一负的总和可能接近 0，除出来的"权重"就没有意义了。
weights_2_tmp = scores_2 / scores_2.sum()
print("\n除以总和　　", weights_2_tmp, " 总和", weights_2_tmp.sum())


# softmax 先取 e 的幂，所以永远为正；差距被拉开，处处可导，便于用梯度下降来训练。
def softmax_naive(x):
    """照公式写的 softmax：第 i 个数是 e^xᵢ / Σⱼ e^xⱼ，(t,) → (t,)，每个数在 0 到 1 之间，总和为 1。"""
    return torch.exp(x) / torch.exp(x).sum(dim=0)


weights_2_naive = softmax_naive(scores_2)
weights_2 = torch.softmax(scores_2, dim=0)
print("自己写的 softmax", weights_2_naive, " 总和", weights_2_naive.sum())
print("torch 的 softmax", weights_2, " 总和", weights_2.sum())

# 两者公式相同，但 float32 最多表示到 3.4e38，e^89 就已经放不下，变成 inf，而 inf / inf = nan。
# torch 先把每个数都减去最大值再取 e 的幂：分子分母同除一个数，结果不变，却再也不会溢出。
large = torch.tensor([100.0, 90.0])
print("分数很大时：自己写的", softmax_naive(large), " torch 的", torch.softmax(large, dim=0))

# %% 上下文向量（context vector）：按权重把 6 个词的嵌入加起来
# 它还是 3 维，但已经不是这个词自己了，而是"它在这句话里的意思"：掺进了它所关注的词。
context_2 = torch.zeros(query.shape)
for i, x_i in enumerate(inputs):
    context_2 += weights_2[i] * x_i
print(f"\n{word} 的上下文向量", context_2)

# %% 3.3.2　一次算完所有词：先写成两重循环
# 每个词轮流当查询。t 个词就有 t × t 个分数：文本变长一倍，计算量和内存都变成 4 倍。
scores_by_loop = torch.empty(6, 6)
for i, x_i in enumerate(inputs):
    for j, x_j in enumerate(inputs):
        scores_by_loop[i, j] = torch.dot(x_i, x_j)
print("\n【3.3.2】两重循环得到的注意力分数 (t, t)")
print(scores_by_loop)

# %% 两重循环 = 一次矩阵乘法
# inputs @ inputs.T 的第 i 行第 j 列，正好是第 i 个词与第 j 个词的点积；循环在 Python 里跑，矩阵乘法在 C 里跑，快得多。
scores = inputs @ inputs.T  # (t, t)
print("矩阵乘法得到的注意力分数 (t, t)")
print(scores)

# %% 每一行各自归一化
# dim=-1 是最后一维，也就是"同一个查询对各个词"的那一行。写成 dim=0 就成了按列归一化，行和不再是 1，而且不会报错。
weights = torch.softmax(scores, dim=-1)  # (t, t)
print("注意力权重 (t, t)")
print(weights)
print("每行之和", weights.sum(dim=-1))

# %% 所有词的上下文向量，还是一次矩阵乘法
# 第 i 行权重 × inputs，就是刚才"按权重相加"的那个循环。
contexts = weights @ inputs  # (t, d)
print("所有词的上下文向量 (t, d)")
print(contexts)

# %% 这个数字对吗？
print("\n这个数字对吗？")
same = torch.allclose(weights_2_naive, weights_2)
confirm("自己写的 softmax 与 torch 的相同", same, "分母没有把所有项加起来，或分数大得溢出了")
confirm("两重循环与矩阵乘法得到同样的分数", torch.allclose(scores_by_loop, scores), "忘了转置：应为 inputs @ inputs.T")
confirm("每行权重之和为 1", torch.allclose(weights.sum(dim=-1), torch.ones(6)), "softmax 的 dim 写成了 0")
same = torch.allclose(contexts[QUERY], context_2)
confirm(f"第 {QUERY + 1} 行就是前面单独算的 {word}", same, "权重与输入的相乘顺序反了")
book = torch.tensor([0.4419, 0.6515, 0.5683])  # 书上打印的 journey 那一行
same = torch.allclose(contexts[1], book, atol=1e-4)
confirm("journey 的上下文向量与原书一致：[0.4419, 0.6515, 0.5683]", same, "输入的数字抄错了，或 softmax 的 dim 不对")

# %% 动手改
# 1. 把开头的 QUERY 换成 0，先猜 Your 最关注谁，再运行。
# 2. 在 inputs 下面加一行 inputs = inputs * 10，看 softmax 权重怎样变成"赢者通吃"，自己写的 softmax 变成 nan：
#    3.4 节要除以 √k，就是不让分数变得这么大。（第一条和最后一条自查会变成 ✗）
# 3. 把 weights 那一行的 dim=-1 改成 0：程序照样跑完，只有自查能告诉你错了。
