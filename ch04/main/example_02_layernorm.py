"""第 4 章 · 4.2 节　层归一化（layer normalization）：把每一行调成均值 0、方差 1

读完你应该能回答：
    1. 归一化沿着哪一维？为什么与批里的其他样本无关？
    2. keepdim=True 忘了写会怎样？
    3. 方差除以 d 还是 d − 1？eps 什么时候看得出来？

运行：
    python ch04/main/example_02_layernorm.py
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 2 秒，0.3 GB（2 核 CPU）

形状记号（全书统一）：b 批大小　d 嵌入维度（这里 b = 2，d = 6；层的输入是 5 个数）
"""

import torch
import torch.nn as nn

SCALE = 1.0  # 改这里：最后几格先把 out 放大多少倍，再归一化


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion

# %% 4.2　准备一层的输出：2 个样本，每个 5 个数，经过 Linear + ReLU 变成 6 个数
torch.manual_seed(123)
batch_example = torch.randn(2, 5)  # (b, 5)
layer = nn.Sequential(nn.Linear(5, 6), nn.ReLU())
out = layer(batch_example)  # (b, d)
print("【4.2】Linear + ReLU 的输出 (b, d)")
print(out)  # 没有负数：ReLU 把它们都变成了 0。所以均值不可能是 0

# %% 归一化之前：每行的均值和方差都不一样
# dim=-1 是沿着最后一维（特征）算：每个样本用自己的 6 个数，样本之间互不相干。
# keepdim=True 把算掉的那一维留成 1：(2, 1) 减到 (2, 6) 上时，才会每行减自己的均值（广播）。
mean = out.mean(dim=-1, keepdim=True)  # (b, 1)
var = out.var(dim=-1, keepdim=True)  # (b, 1)
print("\n均值 (b, 1)")
print(mean)
print("方差 (b, 1)")
print(var)

# %% 忘了 keepdim 会怎样？
# 这里运气好，(2, 6) 减 (2,) 对不上，当场报错。行数恰好等于列数时就惨了：
# 不报错，却变成"第 j 列减第 j 行的均值"，模型照常训练，只是怎么也学不好。
print(f"\n不写 keepdim，均值的形状是 {tuple(out.mean(dim=-1).shape)}")
try:
    out - out.mean(dim=-1)
except RuntimeError as error:
    print(f"  out - 均值：RuntimeError: {error}")
square = torch.arange(9.0).view(3, 3)  # (3, 3)
wrong = square - square.mean(dim=-1)
print("  3 × 3 时不报错，但减完之后每行的均值是", wrong.mean(dim=-1).tolist())

# %% 归一化：减均值，除以标准差
out_norm = (out - mean) / torch.sqrt(var)  # (b, d)
mean = out_norm.mean(dim=-1, keepdim=True)  # (b, 1)
var = out_norm.var(dim=-1, keepdim=True)  # (b, 1)
print("\n归一化之后 (b, d)")
print(out_norm)
print("归一化之后的均值 (b, 1)")
print(mean)  # 像 1.9868e-08 这样的数就是 0：float32 只有约 7 位有效数字，加减之后剩一点零头
print("归一化之后的方差 (b, 1)")
print(var)

# %% 关掉科学记数法，零头就印成 0 了（有时是 -0.0000，那是个极小的负数）
torch.set_printoptions(sci_mode=False)
print("\n同样的均值，sci_mode=False")
print(mean)


# %% 写成类：比上面多三样，eps、可训练的 scale 和 shift、方差除以 d
class LayerNorm(nn.Module):
    """层归一化（layer normalization）：把每个词元的 d 个数调成均值 0、方差 1，再学着缩放和平移。

    网络一深，数值会一层层放大或缩小，梯度跟着爆炸或消失；每层都把数值拉回同一个尺度，训练才稳。
    它只看一个词元自己的 d 个数，与批里其他样本无关，所以批大小是 1 也能用（批归一化就不行）。

    参数:
        emb_dim (int): 嵌入维度 d

    形状:
        输入 (…, d) → 输出 (…, d)：只看最后一维，前面有几维都行，在 GPT 里是 (b, t, d)

    出处: 原书 4.2 节
    """

    def __init__(self, emb_dim):
        super().__init__()
        self.eps = 1e-5  # 方差可能是 0，加上一点点，免得除以 0
        # 一律调成均值 0、方差 1 未必对每一层都好，所以让模型自己学该缩放、平移多少；初值等于"不改"。
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x):
        """y = scale · (x − 均值) / √(方差 + eps) + shift。

        参数:
            x (Tensor): (…, d)

        返回:
            Tensor: (…, d)
        """
        mean = x.mean(dim=-1, keepdim=True)  # (…, 1)　keepdim 留住最后一维，下面才能广播着减
        # unbiased=False：除以 d 而不是 d − 1。统计学上是"有偏"的，但 GPT-2 就是这样算的，要用它的权重就得一致；
        # d = 768 时两者只差千分之一。
        var = x.var(dim=-1, keepdim=True, unbiased=False)  # (…, 1)
        norm_x = (x - mean) / torch.sqrt(var + self.eps)  # (…, d)
        return self.scale * norm_x + self.shift


# 印刷版的书把它用在 5 个数的 batch_example 上。检查方差时也要写 unbiased=False，与类里一致。
ln = LayerNorm(emb_dim=5)
out_ln = ln(batch_example)  # (b, 5)
print("\nLayerNorm(batch_example) 的均值和方差")
print(out_ln.mean(dim=-1, keepdim=True))
print(out_ln.var(dim=-1, keepdim=True, unbiased=False))

# %% 方差为什么可能不到 1？因为 eps
# 作者的仓库后来改为用在 out 上，方差印出来是 0.9995 和 0.9997。两种都没错：除以的是 √(方差 + eps)，
# 所以归一化之后的方差是 方差 / (方差 + eps)。原来的方差越小，eps 越显眼。
features = out * SCALE  # (b, d)
ln_out = LayerNorm(emb_dim=6)
out_ln_2 = ln_out(features)  # (b, d)
var_ln_2 = out_ln_2.var(dim=-1, keepdim=True, unbiased=False)  # (b, 1)
print("\nLayerNorm(out) 的均值和方差")
print(out_ln_2.mean(dim=-1, keepdim=True))
print(var_ln_2)
biased = features.var(dim=-1, keepdim=True, unbiased=False)  # (b, 1)
predicted = biased / (biased + ln_out.eps)  # (b, 1)
for row, (before, after) in enumerate(zip(biased[:, 0].tolist(), predicted[:, 0].tolist()), start=1):
    print(f"  第 {row} 行原来的方差 {before:.3g}，按公式应当变成 {after:.4f}")

# %% 与批归一化（batch normalization）的差别：单独算一个样本，结果不变
# 批归一化沿着批的方向（dim=0）算，批里换一个样本，别人的结果也跟着变；批大小为 1 时根本没法算。
# 大模型常常因为内存不够只能用很小的批，生成时更是一次一个样本，所以用层归一化。
alone = ln_out(features[:1])  # (1, d)
difference = (alone - out_ln_2[:1]).abs().max().item()
print(f"\n第 1 个样本单独归一化，与在批里归一化，最多相差 {difference:.1e}")

# %% 这个数字对吗？
print("\n这个数字对吗？")
book = torch.tensor(
    [[0.6159, 1.4126, -0.8719, 0.5872, -0.8719, -0.8719], [-0.0189, 0.1121, -1.0876, 1.5173, 0.5647, -1.0876]]
)
same = torch.allclose(out_norm, book, atol=1e-4)
confirm("手算的归一化结果与原书一致", same, "种子之后多取了随机数，或方差用了 unbiased=False")
largest = max(out_ln.mean(dim=-1).abs().max().item(), out_ln_2.mean(dim=-1).abs().max().item())
confirm("LayerNorm 之后均值为 0（误差 < 1e-6）", largest < 1e-6, "均值沿着 dim=0 算了，或 shift 不是 0")
if SCALE == 1:
    shown = [f"{v:.4f}" for v in [*out_ln.var(dim=-1, unbiased=False).tolist(), *var_ln_2[:, 0].tolist()]]
    same = shown == ["1.0000", "1.0000", "0.9995", "0.9997"]
    confirm("两种用法的方差与原书一致：1.0000、1.0000 和 0.9995、0.9997", same, "unbiased 写成了 True，或 eps 改过")
same = torch.allclose(var_ln_2, predicted, atol=1e-6)
confirm("方差正好是 方差 / (方差 + eps)", same, "eps 加在了根号外面，或方差除以了 d − 1")
same = torch.allclose(out_ln_2, nn.LayerNorm(6)(features), atol=1e-6)
confirm("与 PyTorch 自带的 nn.LayerNorm 相同", same, "unbiased 没写成 False，或 scale、shift 改过")

# %% 动手改
# 1. 把开头的 SCALE 改成 100：输出几乎不变（放大多少都被归一化除掉了），方差从 0.9995 变成 1.0000。为什么？
# 2. 反过来改成 0.01：方差只剩 0.16 和 0.25。eps 这时还"微不足道"吗？
# 3. 在 out_ln_2 = 那一行前面加 nn.init.constant_(ln_out.shift, 3.0)：均值变成多少？这就是可训练的参数能做的事。
#    （有两条自查会变成 ✗：均值不再是 0，PyTorch 那个没有跟着平移）
