"""第 4 章 · 4.4 节　残差连接（residual / shortcut connection）：给梯度一条不打折的路

读完你应该能回答：
    1. 没有残差连接时，越靠前的层梯度越小，为什么？
    2. 一个加号为什么就能解决？
    3. 什么时候加不了残差？

运行：
    python ch04/main/example_04_shortcut.py
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 2 秒，0.3 GB（2 核 CPU）

形状记号（全书统一）：b 批大小；其余数字就是各层的宽度
"""

import torch
import torch.nn as nn


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


# region 沿用 ch04/main: GELU
class GELU(nn.Module):
    """GELU 激活函数：像 ReLU，但拐弯是圆滑的。（详解见 ch04/main/example_03_feedforward.py）"""

    def forward(self, x):
        return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


# endregion


# %% 4.4　一个 5 层的小网络，残差连接可开可关
class ExampleDeepNeuralNetwork(nn.Module):
    """几层 Linear + GELU 叠起来，可以选择要不要残差连接。

    参数:
        layer_sizes (list[int]): 各层的宽度，n 个数就是 n - 1 层
        use_shortcut (bool): True 时，每层的输入都加到这一层的输出上

    形状:
        输入 (b, layer_sizes[0]) → 输出 (b, layer_sizes[-1])

    出处: 原书 4.4 节；残差连接见 He 等，Deep Residual Learning，2015
    """

    def __init__(self, layer_sizes, use_shortcut):
        super().__init__()
        self.use_shortcut = use_shortcut
        pairs = zip(layer_sizes, layer_sizes[1:])  # [3, 3, 1] → (3, 3), (3, 1)：前一层的宽度，后一层的宽度
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(d_in, d_out), GELU()) for d_in, d_out in pairs])

    def forward(self, x):
        """前向传播。

        参数:
            x (Tensor): (b, layer_sizes[0])

        返回:
            Tensor: (b, layer_sizes[-1])
        """
        for layer in self.layers:
            layer_output = layer(x)
            # 形状不同就没法逐个相加：最后一层是 3 → 1，只能不加。
            # Transformer 块把输出做成与输入同样大小，就是为了处处能加。
            if self.use_shortcut and x.shape == layer_output.shape:
                x = x + layer_output
            else:
                x = layer_output
        return x


# %% 一个小工具：跑一遍前向和反向，看每层的梯度有多大
def print_gradients(model, x):
    """打印每层权重的梯度有多大（绝对值的平均）。

    参数:
        model (nn.Module): 网络
        x (Tensor): 输入，(b, layer_sizes[0])

    返回:
        list[float]: 各层的平均梯度，从第一层到最后一层

    出处: 原书 4.4 节
    """
    output = model(x)
    target = torch.tensor([[0.0]])  # 目标是什么不重要，有个损失才能求梯度
    loss = nn.MSELoss()(output, target)
    loss.backward()  # 从最后一层往第一层，一层一层乘回去
    gradients = []
    for name, param in model.named_parameters():
        if "weight" in name:
            gradients.append(param.grad.abs().mean().item())
            print(f"  {name} 的平均梯度　{gradients[-1]:.8f}")
    return gradients


layer_sizes = [3, 3, 3, 3, 3, 1]
sample_input = torch.tensor([[1.0, 0.0, -1.0]])  # (1, 3)

# %% 没有残差连接
# 链式法则：第一层的梯度 = 后面每一层的斜率连乘。每乘一个小于 1 的数就打一次折，这就是梯度消失（vanishing gradient）。
torch.manual_seed(123)
model_without_shortcut = ExampleDeepNeuralNetwork(layer_sizes, use_shortcut=False)
print("【4.4】没有残差连接")
without = print_gradients(model_without_shortcut, sample_input)

# %% 有残差连接
# y = x + f(x)，所以 dy/dx = 1 + f'(x)：就算 f' 接近 0，连乘里的每一项也接近 1 而不是 0。
# 种子要重新设：两个网络的初始权重完全相同，差别才全部来自那个加号。
torch.manual_seed(123)
model_with_shortcut = ExampleDeepNeuralNetwork(layer_sizes, use_shortcut=True)
print("\n有残差连接")
with_shortcut = print_gradients(model_with_shortcut, sample_input)

# %% 比一比
# 学习率对每一层都一样，梯度小的层就动得少。第一层离损失最远：加了残差，它的梯度大了多少倍？
# 最后一层是第一层的几倍：哪个网络各层的快慢更接近？
print(f"\n第一层的梯度　　　没有残差 {without[0]:.1e}　有残差 {with_shortcut[0]:.1e}　", end="")
print(f"后者是前者的 {with_shortcut[0] / without[0]:,.0f} 倍")
ratios = without[-1] / without[0], with_shortcut[-1] / with_shortcut[0]
print(f"最后一层 ÷ 第一层　没有残差 {ratios[0]:,.0f} 倍　有残差 {ratios[1]:,.0f} 倍")

# %% 这个数字对吗？
print("\n这个数字对吗？")
book = torch.tensor([2.0173588e-4, 1.2011160e-4, 7.1520399e-4, 1.3988736e-3, 5.0496454e-3])
same = torch.allclose(torch.tensor(without), book, rtol=1e-6, atol=0)
confirm("没有残差时的 5 个梯度与原书一致（前 6 位有效数字）", same, "GELU 用成了精确版，或种子没设")
book = torch.tensor([0.2217, 0.2069, 0.3290, 0.2666, 1.3259])
same = torch.allclose(torch.tensor(with_shortcut), book, atol=1e-4)
confirm("有残差时的 5 个梯度：0.2217, 0.2069, 0.3290, 0.2666, 1.3259", same, "第二次建模型前忘了重新设种子")
states = [list(model.parameters()) for model in (model_without_shortcut, model_with_shortcut)]
same = all(torch.equal(a, b) for a, b in zip(*states))
confirm("两个网络的权重逐位相同，只差那个加号", same, "第二次建模型前忘了重新设种子")

# %% 动手改
# 1. 把第二个 torch.manual_seed(123) 删掉：有残差的 5 个数全变了，还能与没有残差的比较吗？
# 2. 把 ExampleDeepNeuralNetwork 里的 GELU() 换成 nn.Sigmoid()：没有残差时，首尾两层的梯度从相差 25 倍变成 3100 倍。
#    sigmoid 的斜率最大才 0.25，连乘四次是多少？
# 3. 把 x = x + layer_output 改成 x = x + 0.1 * layer_output：梯度还消失吗？
# 叠到 10 层、64 层会怎样：ch04/experiments/exp_shortcut_gradients.py。
