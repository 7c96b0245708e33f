"""第 3 章 · 3.6.2 节　多头注意力（multi-head attention）：几个头合成一个大矩阵，一次算完

读完你应该能回答：
    1. 一次大矩阵乘法之后切成 h 份，为什么与 h 个小矩阵各乘各的结果一样？
    2. 为什么要先 view 再 transpose，不能一步 view 成 (b, h, t, k)？
    3. 各头的结果拼回去之前，为什么要 contiguous？拼好之后，out_proj 又做了什么？

运行：
    python ch03/main/example_05_multihead_attention.py
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 2 秒，0.3 GB（2 核 CPU）

形状记号（全书统一）：
    b 批大小　t 序列长度（词元数）　d 嵌入维度，进出不同时分别写作 d_in、d_out　h 头数　k 每个头的维度（k = d_out / h）
"""

import torch
import torch.nn as nn


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


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

# %% 3.6.2　分头：先 view 成 (b, t, h, k)，再 transpose 把 h 换到 t 前面
# 用一眼能认的数来看：十位是第几个词，个位是第几维。3 个词，每个 4 维，分给 2 个头，每头 2 维。
projected = torch.tensor([[[10, 11, 12, 13], [20, 21, 22, 23], [30, 31, 32, 33]]])  # (b, t, d_out) = (1, 3, 4)
split = projected.view(1, 3, 2, 2)  # (b, t, h, k)　最后一维 4 = 2 个头 × 每头 2 维
per_head = split.transpose(1, 2)  # (b, h, t, k)
print("【3.6.2】分头之前 (b, t, d_out)　十位是词，个位是维")
print(projected)
print(f"先 view 再 transpose，成为 {tuple(per_head.shape)}　(b, h, t, k)")
print("  第 1 个头", per_head[0, 0].tolist(), "　每个词的第 0、1 维")
print("  第 2 个头", per_head[0, 1].tolist(), "　每个词的第 2、3 维")

# view 只是把同一串数换个方式断行，不会搬动数据。直接断成 (b, h, t, k)，前 6 个数全归第 1 个头，词就错位了：
# 第 1 个头里混进了不属于它的维，又丢了第 3 个词。形状完全正确，也不报错，这是手敲多头注意力最容易犯的错。
wrong = projected.view(1, 2, 3, 2)  # (b, h, t, k)
print("一步 view 成同样的形状，第 1 个头却是", wrong[0, 0].tolist())

# %% 四维张量怎么做矩阵乘法：只乘最后两维，前面的都当作"批"
# 所以分头之后把 h 换到前面，一个 @ 就同时算完所有句子、所有头的分数，不需要循环。
a = torch.tensor(
    [
        [
            [[0.2745, 0.6584, 0.2775, 0.8573], [0.8993, 0.0390, 0.9268, 0.7388], [0.7179, 0.7058, 0.9156, 0.4340]],
            [[0.0772, 0.3565, 0.1479, 0.5331], [0.4066, 0.2318, 0.4545, 0.9737], [0.4606, 0.5159, 0.4220, 0.5786]],
        ]
    ]
)  # (b, h, t, k) = (1, 2, 3, 4)
both_heads = a @ a.transpose(2, 3)  # (b, h, t, t)　每个头一张 t × t 的分数表
print(f"\n四维矩阵乘法　{tuple(a.shape)} @ {tuple(a.transpose(2, 3).shape)} → {tuple(both_heads.shape)}")
print(both_heads)

# 与把每个头单独拿出来乘，结果一样：
first_head = a[0, 0]  # (t, k)
second_head = a[0, 1]  # (t, k)
first_result = first_head @ first_head.T  # (t, t)
second_result = second_head @ second_head.T  # (t, t)
print("第 1 个头单独算")
print(first_result)
print("第 2 个头单独算")
print(second_result)

# %% 拼回去：transpose 之后要先 contiguous，才能 view
# 各头算完，要把 h 换回 t 后面，再与 k 合成一维。transpose 也不搬数据，只是换一种次序去读：挨着读的数，
# 在内存里不再挨着（不连续），而 view 只会重新断行，于是报错。contiguous() 按现在的次序重新抄一份，就能 view 了。
# reshape 会在需要时自动抄；写出 contiguous，是让这一次复制看得见。
results = per_head.contiguous()  # 代替 weights @ values 的结果：新算出来的张量，内存总是连续的
swapped = results.transpose(1, 2)  # (b, t, h, k)
print("\n各头的结果，内存连续吗？", results.is_contiguous(), "　transpose 之后呢？", swapped.is_contiguous())
try:
    swapped.view(1, 3, 4)
except RuntimeError as error:
    print(f"这时直接 view 会报错：{str(error).split(' (')[0]} …")
merged = swapped.contiguous().view(1, 3, 4)  # (b, t, d_out)
print("先 contiguous 再 view，与分头之前相同吗？", torch.equal(merged, projected))


# %% 装进一个类：MultiHeadAttention，第 4 章起的 GPT 用的就是它
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


# %% 书上的例子：同一句话放两遍，输出 2 维，2 个头，每个头只有 1 维
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
batch = torch.stack((inputs, inputs), dim=0)  # (b, t, d_in) = (2, 6, 3)

torch.manual_seed(123)
mha = MultiHeadAttention(d_in=3, d_out=2, context_length=6, dropout=0.0, num_heads=2)
context_vecs = mha(batch)
print("\nMultiHeadAttention 的输出")
print(context_vecs)
print(f"形状　{tuple(context_vecs.shape)}　(b, t, d_out)")

# %% 慢动作：一步一步走一遍，看每一步的形状
# 书上的例子里 b、h、d_out 都是 2，看形状分不清谁是谁；换成 3 个头、每个头 4 维，五个数就各不相同了。
def show(x, letters, step):
    """印出一步的形状、每一维是什么、这一步做了什么。"""
    print(f"  {str(tuple(x.shape)):<14}{letters:<16}{step}")


b, t, h, k = 2, 6, 3, 4
slow = MultiHeadAttention(d_in=3, d_out=h * k, context_length=t, dropout=0.0, num_heads=h)
queries, keys, values = slow.W_query(batch), slow.W_key(batch), slow.W_value(batch)
print("\n慢动作（b = 2，t = 6，h = 3，k = 4，d_out = 12）")
show(queries, "(b, t, d_out)", "① 投影：Q、K、V 各一个，形状相同")
queries = queries.view(b, t, h, k)  # (b, t, h, k)
show(queries, "(b, t, h, k)", "② 分头：view，只是换个方式断行")
queries = queries.transpose(1, 2)  # (b, h, t, k)
show(queries, "(b, h, t, k)", "② 分头：transpose(1, 2)，每个头有自己的 t 个查询")
keys = keys.view(b, t, h, k).transpose(1, 2)  # (b, h, t, k)
values = values.view(b, t, h, k).transpose(1, 2)  # (b, h, t, k)
scores = queries @ keys.transpose(2, 3)  # (b, h, t, t)
show(scores, "(b, h, t, t)", "③ 打分：每个头一张 t × t 的表")
scores = scores.masked_fill(slow.mask[:t, :t], -torch.inf)
show(scores, "(b, h, t, t)", "④ 因果掩码：右上角填 -inf，形状不变")
weights = torch.softmax(scores / k**0.5, dim=-1)  # (b, h, t, t)
show(weights, "(b, h, t, t)", "⑤ 除以 √k，softmax：每行加起来是 1")
context = weights @ values  # (b, h, t, k)
show(context, "(b, h, t, k)", "⑥ 按权重把 V 加起来")
context = context.transpose(1, 2)  # (b, t, h, k)
show(context, "(b, t, h, k)", "⑥ 拼回去：transpose(1, 2)，把 h 换到 t 后面")
context = context.contiguous().view(b, t, h * k)  # (b, t, d_out)
show(context, "(b, t, d_out)", "⑥ 拼回去：contiguous，再 view")
step_by_step = slow.out_proj(context)
show(step_by_step, "(b, t, d_out)", "out_proj：让各头的结果互相混合")
print("第一句话、第 1 个头的注意力权重 (t, t)")
print(weights[0, 0].detach())

# %% 一个大矩阵 = 几个小矩阵叠起来：与 3.6.1 节的 MultiHeadAttentionWrapper 比
# 把 2 个头的权重上下叠成一个（nn.Linear 的 weight 是 (d_out, d_in)，所以沿第 0 维叠），交给 MultiHeadAttention。
# 矩阵乘法的次数也不同：Q、K、V 三次投影、打分、加权求和，一共 5 次，MultiHeadAttention 还多一次 out_proj。
# 注意两个类的 d_out 意思不同：Wrapper 的是每个头的，MultiHeadAttention 的是总的，所以这里是 2 × 2 = 4。
wrapper = MultiHeadAttentionWrapper(3, 2, 6, 0.0, num_heads=2)
big = MultiHeadAttention(3, 4, 6, 0.0, num_heads=2)
with torch.no_grad():
    for name in ("W_query", "W_key", "W_value"):
        stacked = torch.cat([getattr(head, name).weight for head in wrapper.heads], dim=0)  # (d_out, d_in) = (4, 3)
        getattr(big, name).weight.copy_(stacked)
    # Wrapper 没有 out_proj；让它等于"什么都不做"（单位矩阵、偏置为 0），两者才能直接比较。
    big.out_proj.weight.copy_(torch.eye(4))
    big.out_proj.bias.zero_()
difference = (big(batch) - wrapper(batch)).abs().max().item()
print(f"\n同样的权重，MultiHeadAttention 与 MultiHeadAttentionWrapper 的输出最多相差 {difference:.1e}")
print(f"矩阵乘法　Wrapper {5 * len(wrapper.heads)} 次，每个头 5 次；MultiHeadAttention 不论几个头都是 6 次")

# %% 真实的模型有多大
# GPT-2 各型号的每个头都是 64 维：模型变大时，加的是头数，不是每个头的维度。
print("\nGPT-2 的多头注意力　（d 嵌入维度 = h 头数 × k 每个头的维度）")
for name, d, h in [("small", 768, 12), ("XL", 1600, 25)]:
    print(f"  {name:5}　d = {d:4}　h = {h}　k = {d // h}")

# %% 这个数字对吗？
print("\n这个数字对吗？")
same = per_head[0, 0].tolist() == [[10, 11], [20, 21], [30, 31]]
confirm("分头之后，第 1 个头里每个词各占一行", same, "没有先 view 成 (b, t, h, k)")
same = torch.allclose(both_heads[0], torch.stack([first_result, second_result]))
confirm("四维矩阵乘法 = 每个头单独乘", same, "transpose 换的不是最后两维")
# 第一个词只能看自己，权重总是 1，与 Q、K 无关，所以光看第一行查不出 Q、K 的错，还要看第六行。
same = torch.allclose(context_vecs[0, 0], torch.tensor([0.3190, 0.4858]), atol=1e-4)
confirm("第一行与原书一致：[0.3190, 0.4858]", same, "创建各层的次序不同，随机数就不同")
same = torch.allclose(context_vecs[0, 5], torch.tensor([0.2575, 0.4028]), atol=1e-4)
confirm("第六行与原书一致：[0.2575, 0.4028]", same, "Q、K 算错了，或 softmax 的 dim 不对")
same = torch.allclose(step_by_step, slow(batch), atol=1e-6)
confirm("慢动作的结果，与直接调用相同", same, "forward 里的某一步与慢动作不一样：多半是 √k、掩码或分头")
same = difference < 1e-6
confirm("同样的权重，一个大矩阵与几个小矩阵的输出相同", same, "叠权重的次序或方向不对，或分头时没有 transpose")

# %% 动手改
# 1. 把 MultiHeadAttention 里三处 .view(b, t, self.num_heads, self.head_dim).transpose(1, 2) 都改成
#    .view(b, self.num_heads, t, self.head_dim)，看哪几条自查变成 ✗：形状全对，结果全错。
# 2. 删掉 MultiHeadAttention 里的 / self.head_dim**0.5：书上的两行仍然 ✓（k = 1，√1 = 1），哪两条发现了？
# 3. 删掉 MultiHeadAttention 里的 .contiguous()，看看报错怎么说。
