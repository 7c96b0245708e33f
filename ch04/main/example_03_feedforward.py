"""第 4 章 · 4.3 节　前馈网络（feed forward）与 GELU 激活函数

读完你应该能回答：
    1. GELU 和 ReLU 差在哪里？GPT-2 用的近似公式误差有多大？
    2. 两个线性层之间为什么一定要有激活函数？
    3. 前馈网络为什么先升到 4 倍维度再降回来？

运行：
    python ch04/main/example_03_feedforward.py        # 图片写到 ch04/outputs/gelu_relu.png
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 2 秒，0.3 GB（2 核 CPU）

形状记号（全书统一）：b 批大小　t 序列长度（token 数）　d 嵌入维度
"""

from pathlib import Path

import matplotlib.pyplot as plt
import zhplot  # noqa: F401　导入它，图上就能写中文
import torch
import torch.nn as nn


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


class GELU(nn.Module):
    """GELU 激活函数：像 ReLU，但拐弯是圆滑的。

    ReLU 对负数一律给 0，那里梯度也是 0，神经元可能就此"死掉"；GELU 对不太负的数仍留一点输出和梯度。
    精确的 GELU 是 x·Φ(x)（Φ 是标准正态分布的累积函数）；GPT-2 用的是下面这个便宜的近似，误差不到万分之五。

    形状:
        输入和输出形状相同，逐个数计算

    出处: 原书 4.3 节；Hendrycks & Gimpel, Gaussian Error Linear Units, 2016
    """

    def forward(self, x):
        """前向传播：0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))。

        参数:
            x (Tensor): 任意形状

        返回:
            Tensor: 与 x 同形
        """
        return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


class FeedForward(nn.Module):
    """前馈网络（feed forward）：先升到 4 倍维度，过激活函数，再降回来。

    注意力负责词元之间传递信息，前馈网络负责把每个词元收到的信息消化掉；它对每个词元各算各的。
    升到 4d 是给它更大的空间来组合特征；降回 d 是为了能接上残差连接，也能一块一块地叠。

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
        )

    def forward(self, x):
        """前向传播。

        参数:
            x (Tensor): (b, t, d)

        返回:
            Tensor: (b, t, d)
        """
        return self.layers(x)


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion

# %% 4.3　GELU 与 ReLU：几个有代表性的点
# 斜率就是反向传播时梯度要乘的数。ReLU 在负数那边斜率是 0：一个神经元若对所有样本都输出负数，就再也学不动了。
# GELU 在负数那边斜率很小，但不是 0，甚至有一段是负的：它在 x ≈ -0.75 处降到最低点 -0.17，再慢慢回到 0。
gelu, relu = GELU(), nn.ReLU()
points = torch.tensor([-3.0, -2.0, -1.0, -0.75, -0.25, 0.0, 0.25, 1.0, 3.0], requires_grad=True)
(gelu_slope,) = torch.autograd.grad(gelu(points).sum(), points)
(relu_slope,) = torch.autograd.grad(relu(points).sum(), points)
print("【4.3】      x      ReLU      GELU   ReLU 斜率   GELU 斜率")
for row in zip(points.tolist(), relu(points).tolist(), gelu(points).tolist(), relu_slope.tolist(), gelu_slope.tolist()):
    print("        {:5.2f} {:9.4f} {:9.4f} {:11.4f} {:11.4f}".format(*row))

# %% 近似公式的误差
# 精确的 GELU 是 x·Φ(x)，Φ 是标准正态分布的累积函数（"随机抽一个数，比 x 小的概率"）：x 越大，越可能放行。
# 当年 erf（算 Φ 要用它）很慢，GPT-2 就用 tanh 凑了一个。今天精确的并不慢，但权重是用近似版训练的，要一致就得沿用。
# float64：要量的误差只有万分之几，float32 自己的零头会掺进来。只看负半边，正半边的误差与它对称。
x = torch.linspace(-6, 0, 6001, dtype=torch.float64)
exact = nn.functional.gelu(x)  # 默认就是精确版
error = (gelu(x) - exact).abs()
worst = error.argmax()
print(f"\n近似与精确最多相差 {error[worst].item():.6f}，在 x = ±{-x[worst].item():.2f} 处")
print(f"那里的精确值 GELU({x[worst].item():.2f}) = {exact[worst].item():.4f}：相对误差有 {(error[worst] / exact[worst]).abs().item():.0%}，但绝对值小到不影响训练")

# %% 画出来（原书画的是第一幅；后两幅是它们的斜率，和近似公式的误差）
curve = torch.linspace(-4, 4, 401, requires_grad=True)
(gelu_curve_slope,) = torch.autograd.grad(gelu(curve).sum(), curve)
(relu_curve_slope,) = torch.autograd.grad(relu(curve).sum(), curve)
xs = curve.detach()
figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
axes[0].plot(xs, relu(xs), color="tab:gray", linestyle="--", label="ReLU")
axes[0].plot(xs, gelu(xs), color="tab:blue", label="GELU")
axes[0].set_title("输出")
axes[1].plot(xs, relu_curve_slope, color="tab:gray", linestyle="--", label="ReLU")
axes[1].plot(xs, gelu_curve_slope, color="tab:blue", label="GELU")
axes[1].set_title("斜率：负数那边，ReLU 全是 0")
axes[2].plot(xs, (gelu(xs) - nn.functional.gelu(xs)) * 1e4, color="tab:red")
axes[2].set_title("tanh 近似减精确值（单位：万分之一）")
for axis in axes:
    axis.set_xlabel("x")
    axis.grid(alpha=0.3)
    if axis is not axes[2]:
        axis.legend()
# 笔记本里没有 __file__，就写到当前文件夹的上一级。
OUTPUTS = Path(globals().get("__file__", "notebook.ipynb")).resolve().parent.parent / "outputs"
OUTPUTS.mkdir(exist_ok=True)
picture = OUTPUTS / "gelu_relu.png"
figure.savefig(picture, dpi=150)
print(f"\n图片已写到 {picture}")

# %% 前馈网络：升维 → GELU → 降维，一步一步看形状
torch.manual_seed(123)
ffn = FeedForward(GPT_CONFIG_124M)
x = torch.rand(2, 3, 768)  # (b, t, d)
hidden = ffn.layers[0](x)  # (b, t, 4d)
activated = ffn.layers[1](hidden)  # (b, t, 4d)
out = ffn.layers[2](activated)  # (b, t, d)
print(f"\n【4.3】emb_dim = {GPT_CONFIG_124M['emb_dim']}")
print(f"  输入　　{tuple(x.shape)}　(b, t, d)")
print(f"  升维　　{tuple(hidden.shape)}　(b, t, 4d)")
print(f"  GELU　　{tuple(activated.shape)}　逐个数计算，形状不变")
print(f"  降维　　{tuple(out.shape)}　(b, t, d)：与输入相同，才能接残差连接、一块一块地叠")
print(f"【4.3】ffn(x) 的形状　{tuple(ffn(x).shape)}")

# %% 它对每个词元各算各的：单独拿第 2 个词元来算，结果一样
# 词元之间传递信息是注意力的事，前馈网络只管"消化"。所以它可以完全并行。
alone = ffn(x[:, 1])  # (b, d)
print("\n第 2 个词元单独算，与整句一起算，最大相差", (alone - out[:, 1]).abs().max().item())

# %% 去掉中间的 GELU 会怎样？两个线性层就塌成了一个
# W2 (W1 x + b1) + b2 = (W2 W1) x + (W2 b1 + b2)：白白多花了 470 万个参数，表达能力却只有一个 768 × 768 的线性层。
with torch.no_grad():
    without_gelu = ffn.layers[2](ffn.layers[0](x))  # (b, t, d)
    merged_weight = ffn.layers[2].weight @ ffn.layers[0].weight  # (d, d)
    merged_bias = ffn.layers[2].weight @ ffn.layers[0].bias + ffn.layers[2].bias  # (d,)
    merged = x @ merged_weight.T + merged_bias  # (b, t, d)
print("去掉 GELU 的两层，与合并成的一层，最大相差", (without_gelu - merged).abs().max().item())

# %% 为什么是 4 倍？
# 升维是给它更多"探测器"：4d 个方向各量一量，GELU 决定哪些放行，再组合成 d 维的结果。
# 4 这个数本身是经验：最早的 Transformer 用 512 → 2048，GPT-2 沿用了比例。它是个预算问题，翻倍就贵一倍。
d = GPT_CONFIG_124M["emb_dim"]
print("\n升到几倍　　一块里前馈网络的参数　　约为注意力（2,360,064）的几倍")
for times in (1, 2, 4, 8):
    params = (d * times * d + times * d) + (times * d * d + d)  # 两个线性层，各有权重和偏置
    print(f"  {times}　　　　{params:>12,}　　　　　　　　　{params / 2_360_064:.2f}{'　← GPT-2' if times == 4 else ''}")

# %% 这个数字对吗？
print("\n这个数字对吗？")
confirm("tanh 近似的误差小于千分之一", error.max().item() < 1e-3, "0.044715 抄错了")
confirm("与 F.gelu(approximate='tanh') 相同", torch.allclose(gelu(xs), nn.functional.gelu(xs, approximate="tanh"), atol=1e-6), "√(2/π) 写成了 2/π")
confirm("前馈网络的输出形状是 (2, 3, 768)，与原书一致", ffn(x).shape == (2, 3, 768), "降维的 Linear 写成了 4d → 4d")
confirm("前馈网络有 4,722,432 个参数", sum(p.numel() for p in ffn.parameters()) == 4_722_432, "中间不是 4 倍，或者少了偏置")
confirm("没有 GELU，两个线性层就等于一个", torch.allclose(without_gelu, merged, atol=1e-5), "合并时矩阵的次序反了，应是 W2 W1")

# %% 动手改
# 1. 把 GELU 公式里的 0.044715 改成 0：最大误差变成原来的 70 倍。x³ 那一项看着不起眼，近似全靠它。
# 2. 加一行 print(ffn(torch.rand(5, 768)).shape)：只有两维，能跑吗？（前馈网络只认最后一维）
# 3. 把 torch.rand(2, 3, 768) 改成 torch.rand(2, 3, 512)：报错里的 512 和 768 各是谁？
