"""第 3 章 · 3.6.1 节　从一个头到多个头：把几个因果注意力并排放

读完你应该能回答：
    1. 只有一个注意力头时，模型缺了什么？
    2. 多头注意力的输出为什么是把各头"拼"起来，而不是加起来？
    3. 几个头为什么要放进 nn.ModuleList，普通的 Python 列表不行吗？

运行：
    python ch03/main/example_04_multihead_wrapper.py
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 2 秒，0.3 GB（2 核 CPU）

形状记号（全书统一）：
    b 批大小　　t 序列长度（词元数）　　d 嵌入维度，进出不同时分别写作 d_in、d_out　　h 头数
"""

import torch
import torch.nn as nn


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


# region 沿用 ch03/main: CausalAttention
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
# 一个头给每对词只打一个分，只能学到一种关注方式。"找主语"和"看前一个词"要同时学会，就得有两套 W_query、W_key、W_value。
class MultiHeadAttentionWrapper(nn.Module):
    """把 h 个单头因果注意力并排放，输出左右拼接起来。

    各头的初始值不同，训练后就会各看各的：有的盯着前一个词，有的找主语。
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
        """一个头接一个头地算，输出在最后一维拼起来。"""
        return torch.cat([head(x) for head in self.heads], dim=-1)  # (b, t, h × d_out)


torch.manual_seed(123)
context_length = batch.shape[1]
d_in, d_out = 3, 2
wrapper = MultiHeadAttentionWrapper(d_in, d_out, context_length, 0.0, num_heads=2)
context_vecs = wrapper(batch)
print("【3.6.1】MultiHeadAttentionWrapper 的输出")
print(context_vecs)
print(f"形状　{tuple(context_vecs.shape)}　每个头 {d_out} 维，一共 {len(wrapper.heads)} 个头")
# 左边两列是第 1 个头的，右边两列是第 2 个头的，谁也没动谁。种子相同，所以第 1 个头拿到的随机数
# 与 3.5.3 节的 CausalAttention 一样：左边两列你见过。

# %% 每个头有自己的三个矩阵，训练时各学各的
print("\n各头的参数")
for name, param in wrapper.named_parameters():
    print(f"  {name:<23}{tuple(param.shape)}")

# %% 这个办法慢在哪里？
# forward 里是一个 Python 循环：头与头之间没有任何依赖，却排着队一个一个算，每个头还要各做 5 次小矩阵乘法
# （Q、K、V 三次投影，打分，加权求和）。GPU 擅长一次大乘法，不擅长许多次小乘法；GPT-2 small 有 12 层，每层 12 个头。
# 3.6.2 节把它们合成一个大矩阵，一次算完：example_05_multihead_attention.py。

# %% 这个数字对吗？
print("\n这个数字对吗？")
row_1, row_6 = torch.tensor([-0.4519, 0.2216, 0.4772, 0.1063]), torch.tensor([-0.5299, -0.1081, 0.5077, 0.3493])
same = torch.allclose(context_vecs[0, 0, :4], row_1, atol=1e-4)
confirm("第一行与原书一致：[-0.4519, 0.2216, 0.4772, 0.1063]", same, "种子不是 123，或拼接时 dim 不是 -1")
same = torch.allclose(context_vecs[0, 5, :4], row_6, atol=1e-4)
confirm("第六行与原书一致：[-0.5299, -0.1081, 0.5077, 0.3493]", same, "因果掩码没有生效，或忘了除以 √k")
same = torch.equal(context_vecs[..., :d_out], wrapper.heads[0](batch))
confirm("左边几列就是第 1 个头的输出", same, "各头相加了，而不是拼起来")
count = sum(param.numel() for param in wrapper.parameters())
expected = len(wrapper.heads) * 3 * d_in * d_out  # 每个头三个 d_in × d_out 的矩阵
confirm(f"参数一共 {expected} 个，每个头的都在", count == expected, "各个头放进了普通的列表，或带了偏置")

# %% 动手改
# 1. 把 num_heads=2 改成 3：输出变成 6 维，前 4 列变不变？为什么？
# 2. 把 nn.ModuleList([…]) 的 nn.ModuleList 去掉，只留列表：输出一个数都不变，参数却一个也没有了，训练时什么也学不到。
# 3. 练习 3.2：仍然用两个头，只改一个参数，让输出的最后一维还是 2。（末尾的自查比的是书上的 4 列，这时会报错）
