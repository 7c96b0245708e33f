"""第 4 章 · 4.3 节　前馈网络（feed forward）与 GELU 激活函数

读完你应该能回答：
    1. GELU 和 ReLU 差在哪里？GPT-2 用的近似公式误差有多大？
    2. 两个线性层之间为什么一定要有激活函数？
    3. 前馈网络为什么先升到 4 倍维度再降回来？

运行：
    python ch04/main/example_03_feedforward.py        # 图片写到 ch04/outputs/gelu_relu.png
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 2 秒，0.3 GB（2 核 CPU）

形状记号（全书统一）：b 批大小　t 序列长度（词元数）　d 嵌入维度
"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文

# Jupyter 里没有 __file__，图片就写到当前文件夹的 outputs 里。
OUTPUTS = Path(__file__).resolve().parents[1] / "outputs" if "__file__" in globals() else Path("outputs")


# region 沿用 ch04/main: GPT_CONFIG_124M
GPT_CONFIG_124M = {
    "vocab_size": 50257,
    "context_length": 1024,
    "emb_dim": 768,
    "n_heads": 12,
    "n_layers": 12,
    "drop_rate": 0.1,
    "qkv_bias": False,
}
# endregion


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


# %% 4.3　GELU：像 ReLU，但拐弯是圆滑的
class GELU(nn.Module):
    """GELU 激活函数：像 ReLU，但拐弯是圆滑的。

    ReLU 对负数一律给 0，那里梯度也是 0，神经元可能就此"死掉"；GELU 对不太负的数仍留一点输出和梯度。
    精确的 GELU 是 x·Φ(x)，Φ(x) 是"随机抽一个标准正态的数，比 x 小的概率"：x 越大，越可能放行。
    当年算 Φ 很慢，GPT-2 用了下面这个便宜的近似；权重是用近似版训练的，今天加载它就得沿用。

    形状:
        输入和输出形状相同，逐个数计算

    出处: 原书 4.3 节；Hendrycks & Gimpel, Gaussian Error Linear Units, 2016
    """

    def forward(self, x):
        """前向传播：0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))。"""
        return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


gelu, relu = GELU(), nn.ReLU()

# %% 画出来：输出，和反向传播时梯度要乘的斜率
# ReLU 在负数那边斜率是 0：一个神经元若对所有样本都输出负数，就再也学不动了。
# GELU 在负数那边斜率很小，但不是 0，甚至有一段是负的：它在 x ≈ -0.75 处降到最低点 -0.17，再慢慢回到 0。
x = torch.linspace(-3, 3, 601, requires_grad=True)
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for name, function, style in [("GELU", gelu, "-"), ("ReLU", relu, "--")]:
    y = function(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    axes[0].plot(x.detach(), y.detach(), style, label=name)
    axes[1].plot(x.detach(), slope, style, label=name)
axes[0].set_ylabel("输出")
axes[1].set_ylabel("斜率")
for axis in axes:
    axis.set_xlabel("x")
    axis.grid(alpha=0.3)
    axis.legend()
OUTPUTS.mkdir(exist_ok=True)
figure.savefig(OUTPUTS / "gelu_relu.png", dpi=150)
print(f"【4.3】GELU 与 ReLU 的图已写到 {OUTPUTS / 'gelu_relu.png'}")

# %% 近似公式的误差
# float64：要量的误差只有万分之几，float32 自己的零头会掺进来。
grid = torch.linspace(-6, 6, 12001, dtype=torch.float64)
error = (gelu(grid) - nn.functional.gelu(grid)).abs()  # nn.functional.gelu 默认是精确版
print(f"近似与精确最多相差 {error.max():.6f}，在 x = ±{grid[error.argmax()].abs():.2f} 处")


# %% 前馈网络：升维 → GELU → 降维
class FeedForward(nn.Module):
    """前馈网络（feed forward）：先升到 4 倍维度，过激活函数，再降回来。

    注意力负责词元之间传递信息，前馈网络负责把每个词元收到的信息消化掉；它对每个词元各算各的。
    升到 4d 是给它更大的空间来组合特征；降回 d 是为了能接上残差连接，也能一块一块地叠。
    4 这个数是经验：最早的 Transformer 用 512 → 2048，GPT-2 沿用了比例，翻倍就贵一倍。

    参数:
        cfg (dict): 模型配置，用到 emb_dim

    形状:
        输入 (b, t, d) → 中间 (b, t, 4d) → 输出 (b, t, d)

    出处: 原书 4.3 节
    """

    def __init__(self, cfg):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(cfg["emb_dim"], 4 * cfg["emb_dim"]),
            GELU(),  # 两个线性层之间没有它，就等于一个线性层，叠多少层都白叠
            nn.Linear(4 * cfg["emb_dim"], cfg["emb_dim"]),
            # 到此为止，末尾没有 dropout：4.5 节的 Transformer 块在加残差之前丢弃一次，这里再丢就丢了两次，而且不报错。
        )

    def forward(self, x):
        """前向传播，(b, t, d) → (b, t, d)。"""
        return self.layers(x)


torch.manual_seed(123)
ffn = FeedForward(GPT_CONFIG_124M)
x = torch.rand(2, 3, 768)  # (b, t, d)
hidden = ffn.layers[0](x)  # (b, t, 4d)
activated = ffn.layers[1](hidden)  # (b, t, 4d)
out = ffn.layers[2](activated)  # (b, t, d)
print(f"\n前馈网络，emb_dim = {GPT_CONFIG_124M['emb_dim']}")
print(f"  输入　{tuple(x.shape)}　(b, t, d)")
print(f"  升维　{tuple(hidden.shape)}　(b, t, 4d)")
print(f"  GELU　{tuple(activated.shape)}　逐个数计算，形状不变")
print(f"  降维　{tuple(out.shape)}　(b, t, d)：与输入相同，才能接残差连接")

# %% 它对每个词元各算各的：单独拿第 2 个词元来算，结果一样
# 词元之间传递信息是注意力的事，前馈网络只管"消化"。所以所有词元可以同时算。
alone = ffn(x[:, 1:2])  # (b, 1, d)
difference = (alone - out[:, 1:2]).abs().max().item()
print(f"\n第 2 个词元单独算，与整句一起算，最多相差 {difference:.0e}")

# %% 去掉中间的 GELU 会怎样？两个线性层就塌成了一个
# W2 (W1 x + b1) + b2 = (W2 W1) x + (W2 b1 + b2)：白白多花了 410 万个参数，表达能力却只有一个 768 × 768 的线性层。
with torch.no_grad():
    without_gelu = ffn.layers[2](ffn.layers[0](x))  # (b, t, d)
    merged_weight = ffn.layers[2].weight @ ffn.layers[0].weight  # (d, d)
    merged_bias = ffn.layers[2].weight @ ffn.layers[0].bias + ffn.layers[2].bias  # (d,)
    merged = x @ merged_weight.T + merged_bias  # (b, t, d)
print(f"去掉 GELU 的两层，与合并成的一层，最多相差 {(without_gelu - merged).abs().max():.0e}")

# %% 这个数字对吗？
print("\n这个数字对吗？")
confirm("tanh 近似的误差小于千分之一", error.max().item() < 1e-3, "0.044715 抄错了")
same = torch.allclose(gelu(grid), nn.functional.gelu(grid, approximate="tanh"), atol=1e-6)
confirm("与 PyTorch 自带的 tanh 近似版相同", same, "√(2/π) 写成了 2/π")
confirm("前馈网络的输出形状是 (2, 3, 768)，与原书一致", ffn(x).shape == (2, 3, 768), "降维的 Linear 写成了 4d → 4d")
same = sum(p.numel() for p in ffn.parameters()) == 4_722_432
confirm("前馈网络有 4,722,432 个参数", same, "中间不是 4 倍，或者少了偏置")
kinds = [type(layer).__name__ for layer in ffn.layers]
confirm(f"前馈网络只有三层：{'、'.join(kinds)}", kinds == ["Linear", "GELU", "Linear"], "末尾多留了一个 Dropout")
same = torch.allclose(without_gelu, merged, atol=1e-5)
confirm("没有 GELU，两个线性层就等于一个", same, "合并时矩阵的次序反了，应是 W2 W1")

# %% 动手改
# 1. 把 GELU 公式里的 0.044715 改成 0：最大误差变成原来的 70 倍。x³ 那一项看着不起眼，近似全靠它。
# 2. 加一行 print(ffn(torch.rand(5, 768)).shape)：只有两维，能跑吗？（前馈网络只认最后一维）
# 3. 把 torch.rand(2, 3, 768) 改成 torch.rand(2, 3, 512)：报错里的 512 和 768 各是谁？
