"""第 3 章 · 3.4 节　带可训练权重的自注意力：查询、键、值

读完你应该能回答：
    1. 查询（query）、键（key）、值（value）各是什么？为什么一个词要变出三个向量，而不是直接用它的嵌入？
    2. 分数为什么要除以 √k 再做 softmax？不除会怎样？
    3. 同样是矩阵乘法，为什么 nn.Linear 比自己写的 torch.rand 参数好训练得多？

运行：
    python ch03/main/example_02_trainable_attention.py
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 2 秒，0.3 GB（2 核 CPU）

形状记号（全书统一）：
    t 序列长度（词元数）　　d 嵌入维度，进出不同时分别写作 d_in、d_out　　k 每个头的维度（这里只有一个头，k = d_out）
"""

import torch
import torch.nn as nn


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion

# %% 3.4　输入：与 3.3 节相同的 6 个词
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

# %% 3.4.1　三个权重矩阵：同一个词，扮演三个角色
# 3.3 节直接拿嵌入做点积，没有任何东西可学，而且"A 看 B"与"B 看 A"的分数一定相等。
# 现在给每个角色一个矩阵：查询 = 我想找什么，键 = 别人凭什么找到我，值 = 找到我之后拿走什么。
# 三个矩阵靠训练学会，"形容词找名词"和"名词找形容词"就可以不一样了。
x_2 = inputs[1]  # (d_in,)　第 2 个词 journey
d_in = inputs.shape[1]  # 3
d_out = 2  # GPT 里 d_in 与 d_out 相等；这里故意取得不同，好看清每一步的形状

torch.manual_seed(123)  # 三个矩阵依次从同一个随机数序列里取，创建的次序不能换，换了就得不到书上的数
# requires_grad=False：这里只看前向计算，不求梯度，打印出来干净；真正训练时必须是 True。
W_query = nn.Parameter(torch.rand(d_in, d_out), requires_grad=False)
W_key = nn.Parameter(torch.rand(d_in, d_out), requires_grad=False)
W_value = nn.Parameter(torch.rand(d_in, d_out), requires_grad=False)

query_2 = x_2 @ W_query  # (d_out,)
key_2 = x_2 @ W_key  # (d_out,)
value_2 = x_2 @ W_value  # (d_out,)
print("【3.4.1】journey 的查询", query_2)
print("journey 的键　", key_2)
print("journey 的值　", value_2)

# %% 每个词都要有键和值：journey 要去和它们一一比较
keys = inputs @ W_key  # (t, d_out)
values = inputs @ W_value  # (t, d_out)
print(f"\n键　{tuple(keys.shape)}　(t, d_out)")
print(f"值　{tuple(values.shape)}　(t, d_out)")

# %% 注意力分数：查询与键的点积
score_22 = query_2.dot(keys[1])  # 第一个 2 是"谁在看"，第二个 2 是"看谁"；Python 从 0 数起，所以是 keys[1]
print("\njourney 对自己的分数", score_22)
scores_2 = query_2 @ keys.T  # (t,)
print("journey 对 6 个词的分数", scores_2)

# %% 除以 √k，再 softmax
# d_k 是键的维度，往后写作 k：一个头时等于 d_out，多个头时等于 d_out / h。
d_k = keys.shape[1]
weights_2 = torch.softmax(scores_2 / d_k**0.5, dim=-1)  # (t,)
print("journey 的注意力权重", weights_2, " 总和", weights_2.sum())

# %% 上下文向量：按权重把"值"加起来（3.3 节加的是嵌入本身）
context_2 = weights_2 @ values  # (d_out,)
print("journey 的上下文向量", context_2)

# %% 为什么是 √k：用随机向量做个实验
# 两个 k 维向量的点积是 k 项之和；各项独立、方差为 1 时，和的方差是 k，标准差就是 √k。
# 分数一大，softmax 就变成"赢者通吃"：最大的权重接近 1，其余接近 0。这时分数变一点点，权重几乎不动，
# 梯度也就几乎是 0，训练不动。除以 √k 正好把标准差拉回 1，k 取多大都一样。
print("\n为什么除以 √k　（1000 个随机的查询，各看 6 个随机的键）")
torch.manual_seed(123)
for k in (2, 64, 1024):
    random_scores = (torch.randn(1000, 1, k) * torch.randn(1000, 6, k)).sum(dim=-1)  # (n, t)　逐项相乘再相加，就是点积
    raw = torch.softmax(random_scores, dim=-1).max(dim=-1).values.mean()
    scaled = torch.softmax(random_scores / k**0.5, dim=-1).max(dim=-1).values.mean()
    spread = f"分数的标准差 {random_scores.std():5.1f}（√k = {k**0.5:4.1f}）"
    print(f"  k = {k:4}　{spread}　最大权重：不除 {raw:.2f}，除了 {scaled:.2f}")


# %% 3.4.2　装进一个类：SelfAttention_v1
class SelfAttention_v1(nn.Module):
    """一个头的自注意力，权重矩阵自己用 nn.Parameter 建。

    与 3.4.1 节做的事完全相同，只是一次算完所有词。继承 nn.Module 的好处：赋值给 self 的 nn.Parameter
    会自动登记，于是 parameters() 能列出它们交给优化器，to(device) 能把它们一起搬走，state_dict() 能存盘。

    参数:
        d_in (int): 输入嵌入维度
        d_out (int): 查询、键、值和输出的维度

    形状:
        输入 (t, d_in) → 输出 (t, d_out)；一次只接受一句话，没有批维度

    出处: 原书 3.4.2 节
    """

    def __init__(self, d_in, d_out):
        super().__init__()
        # torch.rand 取 0 到 1 之间的数，全是正的：3 维的小例子看不出问题，维度一大就训练不动，见最后一格。
        self.W_query = nn.Parameter(torch.rand(d_in, d_out))
        self.W_key = nn.Parameter(torch.rand(d_in, d_out))
        self.W_value = nn.Parameter(torch.rand(d_in, d_out))

    def forward(self, x):
        """前向传播：softmax(QKᵀ / √k) V。

        参数:
            x (Tensor): 一句话的嵌入，(t, d_in)

        返回:
            Tensor: 上下文向量，(t, d_out)
        """
        # ① 投影：每个词变出三个向量。
        queries = x @ self.W_query  # (t, d_out)
        keys = x @ self.W_key  # (t, d_out)
        values = x @ self.W_value  # (t, d_out)

        # ② 打分：第 i 行第 j 列是第 i 个词的查询与第 j 个词的键的点积。
        scores = queries @ keys.T  # (t, t)

        # ③ 缩放、归一化：每一行（每个查询）各自加起来等于 1。
        weights = torch.softmax(scores / keys.shape[-1] ** 0.5, dim=-1)  # (t, t)

        # ④ 按权重把值加起来。
        return weights @ values  # (t, d_out)


torch.manual_seed(123)  # 与 3.4.1 节同一个种子、同样的次序，所以三个矩阵也相同，第 2 行应当就是 context_2
sa_v1 = SelfAttention_v1(d_in, d_out)
# 打印时末尾的 grad_fn 表示"这个数是怎么算出来的，PyTorch 记着呢"：参数要求梯度，由它算出的一切都会带上。
print("\n【3.4.2】SelfAttention_v1 的输出 (t, d_out)")
print(sa_v1(inputs))


# %% 换成 nn.Linear：SelfAttention_v2
class SelfAttention_v2(nn.Module):
    """一个头的自注意力，权重矩阵换成 nn.Linear。

    不带偏置的 nn.Linear 就是一次矩阵乘法，所以公式一个字没变；变的是初始值（见下一格），以及加一个偏置只要一个开关。

    参数:
        d_in (int): 输入嵌入维度
        d_out (int): 查询、键、值和输出的维度
        qkv_bias (bool): 三个投影是否带偏置；GPT-2 的预训练权重带，自己训练时通常不带

    形状:
        输入 (t, d_in) → 输出 (t, d_out)

    出处: 原书 3.4.2 节
    """

    def __init__(self, d_in, d_out, qkv_bias=False):
        super().__init__()
        # 注意 nn.Linear 存的 weight 是 (d_out, d_in)，前向时算 x @ weight.T：与 v1 的矩阵互为转置，互相拷贝时别忘了。
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)

    def forward(self, x):
        """前向传播：softmax(QKᵀ / √k) V，与 v1 相同。

        参数:
            x (Tensor): 一句话的嵌入，(t, d_in)

        返回:
            Tensor: 上下文向量，(t, d_out)
        """
        queries = self.W_query(x)  # (t, d_out)
        keys = self.W_key(x)  # (t, d_out)
        values = self.W_value(x)  # (t, d_out)
        scores = queries @ keys.T  # (t, t)
        weights = torch.softmax(scores / keys.shape[-1] ** 0.5, dim=-1)  # (t, t)
        return weights @ values  # (t, d_out)


torch.manual_seed(789)
sa_v2 = SelfAttention_v2(d_in, d_out)
print("\nSelfAttention_v2 的输出 (t, d_out)　与 v1 不同，因为初始值不同，公式是一样的")
print(sa_v2(inputs))

# %% 为什么 nn.Linear 更好训练：维度换成 GPT-2 small 的 768，看 W_query 还收不收得到梯度
# torch.rand 的均值是 0.5，768 项全往一边加，查询和键就大得离谱，除以 √k 也救不回来：softmax 只剩一个 1，
# 而 softmax 饱和的地方梯度是 0，W_query 和 W_key 收不到任何信号，学不动。
# nn.Linear 在 ±1/√d_in 之间均匀取值：均值是 0，维度越大取得越小，输出的大小就与维度无关。
torch.manual_seed(123)
wide_inputs = torch.randn(6, 768)
wide_v1, wide_v2 = SelfAttention_v1(768, 64), SelfAttention_v2(768, 64)
for attention in (wide_v1, wide_v2):
    attention(wide_inputs).pow(2).mean().backward()  # 随便定一个损失，只为看梯度有多大
gradient_v1, gradient_v2 = wide_v1.W_query.grad.norm(), wide_v2.W_query.weight.grad.norm()
print(f"\n{wide_inputs.shape[1]} 维时，W_query 的梯度大小　torch.rand {gradient_v1:.1e}　nn.Linear {gradient_v2:.1e}")

# %% 这个数字对吗？
print("\n这个数字对吗？")
same = torch.allclose(query_2, torch.tensor([0.4306, 1.4551]), atol=1e-4)
confirm("journey 的查询与原书一致：[0.4306, 1.4551]", same, "三个矩阵创建的次序不同，或种子不是 123")
confirm("权重总和为 1", torch.allclose(weights_2.sum(), torch.tensor(1.0)), "忘了 softmax")
same = torch.allclose(context_2, torch.tensor([0.3061, 0.8210]), atol=1e-4)
confirm("journey 的上下文向量与原书一致：[0.3061, 0.8210]", same, "忘了除以 √k，或加的是 inputs 而不是 values")
same = torch.allclose(sa_v1(inputs)[1], context_2)
confirm("SelfAttention_v1 的第 2 行就是前面一步步算的结果", same, "类里创建矩阵的次序与 3.4.1 节不同")
same = torch.allclose(sa_v2(inputs)[0], torch.tensor([-0.0739, 0.0713]), atol=1e-4)
confirm("SelfAttention_v2 的第一行与原书一致：[-0.0739, 0.0713]", same, "种子不是 789")
less = bool(gradient_v1 * 1000 < gradient_v2)
confirm("维度一大，torch.rand 的梯度不到 nn.Linear 的千分之一", less, "两个类的初始化写成一样的了")

# %% 动手改
# 1. 3.4.1 节里，把 W_key 那一行挪到 W_query 前面，看哪几条自查变成 ✗：种子相同，次序不同，数就不同。
# 2. 把 SelfAttention_v1 里的 torch.rand(d_in, d_out) 都换成 (torch.rand(d_in, d_out) * 2 - 1) / d_in**0.5，
#    再看最后一格：梯度回来了（有两条自查会变成 ✗：它不再是书上的 v1，也不再学不动）。
# 3. 把最后一格里的 768 都改成 3072：torch.rand 的梯度又小了几千万倍，nn.Linear 的呢？想想"大小与维度无关"。
