"""第 3 章 · 3.6 节　从一个头到多个头：先并排放几个，再合成一个大矩阵

读完你应该能回答：
    1. 多头注意力的输出为什么是把各头"拼"起来，而不是加起来？
    2. 一个大矩阵乘法之后切成 h 份，为什么与 h 个小矩阵各乘各的结果完全一样？
    3. 为什么要先 view 再 transpose，不能一步 view 成 (b, h, t, k)？最后为什么又要 contiguous？

运行：
    python ch03/main/example_04_multihead_wrapper.py
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 2 秒，0.3 GB（2 核 CPU）

形状记号（全书统一）：
    b 批大小　　t 序列长度（token 数）　　d 嵌入维度，进出不同时分别写作 d_in、d_out　　h 头数　　k 每个头的维度
"""


import torch
import torch.nn as nn


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


# region 沿用 ch03/main/example_03_causal_attention.py: CausalAttention
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


# endregion


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

# %% 3.6　输入：与 3.5.3 节相同，同一句话放两遍，凑成一批
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


# %% 3.6.1　最直接的办法：几个 CausalAttention 并排放
class MultiHeadAttentionWrapper(nn.Module):
    """把 h 个单头因果注意力并排放，输出左右拼接起来。

    每个头有自己的 W_query、W_key、W_value，初始值不同，训练后就会各看各的：有的盯着前一个词，有的找主语。
    拼接而不是相加：相加会把各头的发现混在一起，再也分不开；拼接则原样保留，由后面的层自己决定怎么用。

    参数:
        d_in (int): 输入嵌入维度
        d_out (int): 每一个头的输出维度（注意：不是总的；总的是 num_heads × d_out）
        context_length (int): 支持的最长序列
        dropout (float): 注意力权重的丢弃概率，0.0 表示不丢弃
        num_heads (int): 头数 h
        qkv_bias (bool): 各投影是否带偏置

    形状:
        输入 (b, t, d_in) → 输出 (b, t, num_heads × d_out)

    出处: 原书 3.6.1 节
    """

    def __init__(self, d_in, d_out, context_length, dropout, num_heads, qkv_bias=False):
        super().__init__()
        # 必须用 nn.ModuleList：放进普通的 Python 列表，nn.Module 看不见它们，优化器就收不到这些头的参数。
        self.heads = nn.ModuleList([CausalAttention(d_in, d_out, context_length, dropout, qkv_bias) for _ in range(num_heads)])

    def forward(self, x):
        """前向传播：一个头接一个头地算，再拼起来。

        参数:
            x (Tensor): 输入嵌入，(b, t, d_in)

        返回:
            Tensor: 各头的上下文向量左右拼接，(b, t, num_heads × d_out)
        """
        return torch.cat([head(x) for head in self.heads], dim=-1)  # (b, t, d)　d = h × k


torch.manual_seed(123)
context_length = batch.shape[1]
d_in, d_out = 3, 2
wrapper = MultiHeadAttentionWrapper(d_in, d_out, context_length, 0.0, num_heads=2)
context_vecs = wrapper(batch)  # (b, t, d) = (2, 6, 4)
print("【3.6.1】MultiHeadAttentionWrapper 的输出")
print(context_vecs)
print(f"形状　{tuple(context_vecs.shape)}　每个头 {d_out} 维，{len(wrapper.heads)} 个头拼成 {context_vecs.shape[-1]} 维")
# 种子相同，所以第 1 个头拿到的随机数与 3.5.3 节的 CausalAttention 一样：左边两列你应该见过。

# %% 3.6.2　先看懂一件事：四维张量怎么做矩阵乘法
# @ 只对最后两维做矩阵乘法，前面的维度都当作"批"，各算各的。
# 所以把头放在第 2 维，一个 @ 就同时算完所有句子、所有头的分数，不需要循环。
a = torch.tensor(
    [
        [
            [[0.2745, 0.6584, 0.2775, 0.8573], [0.8993, 0.0390, 0.9268, 0.7388], [0.7179, 0.7058, 0.9156, 0.4340]],
            [[0.0772, 0.3565, 0.1479, 0.5331], [0.4066, 0.2318, 0.4545, 0.9737], [0.4606, 0.5159, 0.4220, 0.5786]],
        ]
    ]
)  # (1, 2, 3, 4)　依次是 b、h、t、k
both_heads = a @ a.transpose(2, 3)  # (1, 2, 3, 3)　每个头一张 t × t 的分数表
print(f"\n【3.6.2】四维矩阵乘法　{tuple(a.shape)} @ {tuple(a.transpose(2, 3).shape)} → {tuple(both_heads.shape)}")
print(both_heads)

# 与把每个头单独拿出来乘，结果一样：
first_head = a[0, 0]  # (3, 4)
second_head = a[0, 1]  # (3, 4)
first_result = first_head @ first_head.T  # (3, 3)
second_result = second_head @ second_head.T  # (3, 3)
print("第 1 个头单独算")
print(first_result)
print("第 2 个头单独算")
print(second_result)

# %% 分头：先 view 成 (b, t, h, k)，再把 h 换到前面
# 用一眼能认的数来看：十位是第几个词，个位是第几维。3 个词，每个 4 维，分给 2 个头，每头 2 维。
projected = torch.tensor([[[10, 11, 12, 13], [20, 21, 22, 23], [30, 31, 32, 33]]])  # (1, 3, 4)　依次是 b、t、d
split = projected.view(1, 3, 2, 2).transpose(1, 2)  # (1, 2, 3, 2)　依次是 b、h、t、k
print("\n分头之前 (b, t, d)　十位是词，个位是维")
print(projected)
print("先 view 再 transpose　对：第 1 个头拿到每个词的第 0、1 维")
print(split[0, 0])

# view 只是把同一串数换个方式断行，不会搬动数据。直接断成 (b, h, t, k)，前 6 个数全归第 1 个头，词就错位了：
# 第 1 个头里混进了不属于它的维，又丢了第 3 个词。形状完全正确，也不报错，这是手敲多头注意力最容易犯的错。
wrong_split = projected.view(1, 2, 3, 2)  # (1, 2, 3, 2)
print("一步 view 成 (b, h, t, k)　错：词和维混在了一起")
print(wrong_split[0, 0])

# %% 拼回去：transpose 之后要先 contiguous，才能 view
# transpose 也不搬数据，只是换一种次序去读：挨着读的数，在内存里不再挨着（不连续），而 view 只会重新断行，于是报错。
# contiguous() 按现在的次序重新抄一份，之后就能 view 了。reshape 会在需要时自动抄；写出 contiguous，是让这一次复制看得见。
per_head = split.contiguous()  # (1, 2, 3, 2)　冒充 weights @ values 的结果：新算出来的张量，内存总是连续的
swapped = per_head.transpose(1, 2)  # (1, 3, 2, 2)　依次是 b、t、h、k
print("\n各头的结果，内存连续吗？", per_head.is_contiguous(), "　transpose 之后呢？", swapped.is_contiguous())
try:
    swapped.view(1, 3, 4)
except RuntimeError as error:
    print(f"这时直接 view 会报错：{str(error).split(' (')[0]} …")
merged = swapped.contiguous().view(1, 3, 4)  # (1, 3, 4)
print("先 contiguous 再 view，与分头之前相同吗？", torch.equal(merged, projected))

# %% 一个大矩阵 = 几个小矩阵叠起来
# 把 2 个头的权重上下叠成一个（nn.Linear 的 weight 是 (d_out, d_in)，所以沿第 0 维叠），交给 MultiHeadAttention。
# 注意两个类的 d_out 意思不同：MultiHeadAttentionWrapper 的是每个头的，MultiHeadAttention 的是总的，所以这里是 2 × 2 = 4。
mha = MultiHeadAttention(d_in, 2 * d_out, context_length, 0.0, num_heads=2)
with torch.no_grad():
    for name in ("W_query", "W_key", "W_value"):
        stacked = torch.cat([getattr(head, name).weight for head in wrapper.heads], dim=0)  # (4, 3)
        getattr(mha, name).weight.copy_(stacked)
    # MultiHeadAttentionWrapper 没有 out_proj；让它等于"什么都不做"（单位矩阵、偏置为 0），两者才能直接比较。
    mha.out_proj.weight.copy_(torch.eye(2 * d_out))
    mha.out_proj.bias.zero_()
difference = (mha(batch) - context_vecs).abs().max().item()
print(f"\n同样的权重，MultiHeadAttention 与 MultiHeadAttentionWrapper 的输出最多相差 {difference:.1e}")
print(f"矩阵乘法的次数：MultiHeadAttentionWrapper 每个头 5 次，共 {5 * len(wrapper.heads)} 次；MultiHeadAttention 不论几个头都是 5 次，外加 1 次 out_proj")

# %% 真实的模型有多大
# GPT-2 各型号的每个头都是 64 维：模型变大时，加的是头数，不是每个头的维度。
print("\nGPT-2 的多头注意力　（d 嵌入维度 = h 头数 × k 每个头的维度）")
for name, d, h in [("small", 768, 12), ("XL", 1600, 25)]:
    print(f"  {name:5}　d = {d:4}　h = {h}　k = {d // h}")

# %% 这个数字对吗？
print("\n这个数字对吗？")
row_1, row_6 = torch.tensor([-0.4519, 0.2216, 0.4772, 0.1063]), torch.tensor([-0.5299, -0.1081, 0.5077, 0.3493])
confirm("Wrapper 的第一行与原书一致：[-0.4519, 0.2216, 0.4772, 0.1063]", torch.allclose(context_vecs[0, 0, :4], row_1, atol=1e-4), "种子不是 123，或拼接时 dim 不是 -1")
confirm("Wrapper 的第六行与原书一致：[-0.5299, -0.1081, 0.5077, 0.3493]", torch.allclose(context_vecs[0, 5, :4], row_6, atol=1e-4), "因果掩码没有生效，或忘了除以 √k")
confirm("四维矩阵乘法 = 每个头单独乘", torch.allclose(both_heads[0], torch.stack([first_result, second_result])), "transpose 换的不是最后两维")
confirm("分头之后，第 1 个头里每个词各占一行", split[0, 0].tolist() == [[10, 11], [20, 21], [30, 31]], "没有先 view 成 (b, t, h, k)")
confirm("同样的权重，一个大矩阵与几个小矩阵的输出相同", difference < 1e-6, "叠权重的次序或方向不对，或分头时没有 transpose")

# %% 动手改
# 1. 把两处 num_heads=2 改成 3，叠权重那一格的 2 * d_out 改成 3 * d_out：输出变成 6 维，前 4 列不变，两个类仍然相等。
# 2. 把沿用的 MultiHeadAttention 里三处 .view(b, t, self.num_heads, self.head_dim).transpose(1, 2) 改成 .view(b, self.num_heads, t, self.head_dim)，
#    看哪一条自查变成 ✗：形状全对，结果全错。
# 3. 删掉沿用的 MultiHeadAttention 里的 .contiguous()，看看报错怎么说。
