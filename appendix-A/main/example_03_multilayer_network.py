"""附录 A · A.5 节　多层神经网络：nn.Module 怎样管好几千个参数

读完你应该能回答：
    1. 继承 nn.Module 得到了什么？__init__ 和 forward 各写什么？
    2. NeuralNetwork(50, 3) 的 2213 个参数是怎么数出来的？
    3. 为什么模型最后不加 softmax？no_grad 和 softmax 各在什么时候用？

运行：
    python appendix-A/main/example_03_multilayer_network.py
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 2 秒，0.3 GB（2 核 CPU）

形状记号（全书统一）：b 批大小；特征数和类别数直接用参数名 num_inputs、num_outputs
"""

import torch
import torch.nn as nn


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


# %% A.5　两个隐藏层的网络
class NeuralNetwork(nn.Module):
    """两个隐藏层的全连接网络：num_inputs → 30 → 20 → num_outputs，中间用 ReLU。

    继承 nn.Module 之后，凡是赋值给 self 的层都会自动登记：parameters() 能列出它们的参数交给优化器，
    to(device) 能把它们一起搬走，state_dict() 能存盘。所以 __init__ 只管"有哪些零件"，forward 只管"怎样连起来"。

    参数:
        num_inputs (int): 每个样本有几个特征
        num_outputs (int): 分几类，每类给一个分数

    形状:
        输入 (b, num_inputs) → 输出 (b, num_outputs)，是 logits（未归一化的分数）

    出处: 原书 A.5 节
    """

    def __init__(self, num_inputs, num_outputs):
        super().__init__()  # 少了这一句，下一句就会报错：登记用的本子还没建好
        self.layers = nn.Sequential(
            nn.Linear(num_inputs, 30),
            # 没有非线性的激活函数，叠多少个线性层都等于一个线性层，只能画直线来分类。
            nn.ReLU(),
            nn.Linear(30, 20),
            nn.ReLU(),
            nn.Linear(20, num_outputs),  # 最后不加激活函数：分数可正可负
        )

    def forward(self, x):
        """前向传播；用的时候写 model(x)，不要直接调用 forward（会跳过 PyTorch 的钩子）。

        参数:
            x (Tensor): 一批样本

        形状:
            (b, num_inputs) → (b, num_outputs)
        """
        logits = self.layers(x)  # (b, num_outputs)
        return logits


model = NeuralNetwork(50, 3)
print("【A.5】模型的结构")
print(model)

# %% 数参数：每个线性层 = 输入数 × 输出数 + 输出数（偏置）
num_params = sum(p.numel() for p in model.parameters() if p.requires_grad)
print(f"\n可训练的参数一共 {num_params} 个：")
for name, parameter in model.named_parameters():
    print(f"  {name:<15} {str(tuple(parameter.shape)):<9} {parameter.numel():5}")
# 名字里的 0、2、4 是它在 Sequential 里的次序；1 和 3 是 ReLU，没有参数。存盘、加载时认的就是这些名字。

# %% 第一层的权重：没有设种子，每次运行都不同
# 为什么要随机？如果全是 0（或全相同），同一层的神经元算出的东西、收到的梯度就永远相同，30 个等于 1 个。
print("\n没有设种子，第一层权重的第一行，前 3 个数：", [round(v, 4) for v in model.layers[0].weight[0, :3].tolist()])

# %% 设了种子：与书上逐位相同
# nn.Linear 存的次序是"输出数在前，输入数在后"，即 (30, 50)：前向时算 x @ weight.T + bias。
torch.manual_seed(123)
model = NeuralNetwork(50, 3)
print("\n种子 123，第一层的权重")
print(model.layers[0].weight)  # 末尾的 requires_grad=True：nn.Parameter 默认就要求梯度，不用自己写
print(f"形状 {tuple(model.layers[0].weight.shape)}　（输出数在前）")

# %% 前向：一个样本进去，三个分数出来
# 模型只收一批一批的数据，所以哪怕只有一个样本，也要有批的那一维：(1, 50)，不是 (50,)。
torch.manual_seed(123)
X = torch.rand((1, 50))  # (b, num_inputs) = (1, 50)
out = model(X)  # (b, num_outputs) = (1, 3)
print("\n一个随机样本的 logits")
print(out)
# grad_fn=<AddmmBackward0>：最后一步是"矩阵乘法再加偏置"（addmm），PyTorch 记着账，随时可以 backward。

# %% 只预测、不训练：no_grad
# 不建计算图，中间结果用完就扔：省内存，也快一些。数字不变。
with torch.no_grad():
    quiet = model(X)  # (b, num_outputs)
print("\nno_grad 里算的，没有 grad_fn 了")
print(quiet)

# %% 要概率时才加 softmax
# 训练用的 F.cross_entropy 要的是 logits，它自己会做 log_softmax；模型里再加一次 softmax，就做了两遍，学得又慢又差。
# 只想知道是哪一类也不用它：softmax 不改变谁大谁小，直接 argmax 即可。
with torch.no_grad():
    probas = torch.softmax(model(X), dim=1)  # (b, num_outputs)　dim=1：对每个样本的 3 个分数归一化
print("\nsoftmax 之后：三类的概率")
print(probas)
print(f"加起来是 {probas.sum().item():.4f}")  # 还没训练过，所以三类都在 1/3 上下

# %% 为什么不自己先 softmax 再取对数？
# 分数悬殊时，小的那个概率会下溢成 0，ln 0 = -inf，损失和梯度全毁了。
# log_softmax 直接算 x - ln Σeˣ，不经过那个概率，就没有这个问题。
extreme = torch.tensor([[0.0, 200.0]])
print("\nlogits = [0, 200]　先 softmax 再 log：", torch.softmax(extreme, dim=1).log().tolist())
print("　　　　　　　　　 log_softmax　　　：", torch.log_softmax(extreme, dim=1).tolist())

# %% 这个数字对吗？
print("\n这个数字对吗？")
by_hand = (50 * 30 + 30) + (30 * 20 + 20) + (20 * 3 + 3)
confirm(f"参数 {by_hand} 个，与书上相同", num_params == by_hand == 2213, "忘了数偏置，或层的大小不同")
row = model.layers[0].weight[0]
ends = torch.cat([row[:3], row[-3:]])  # (6,)
close = torch.allclose(ends, torch.tensor([-0.0577, 0.0047, -0.0702, 0.0222, 0.1260, 0.0865]), atol=1e-4)
confirm("第一行的头尾各 3 个与原书一致", close, "建模型之前多取过随机数，或各层创建的次序不同")
close = torch.allclose(out, torch.tensor([[-0.1262, 0.1080, -0.1792]]), atol=1e-4)
confirm("logits 与原书一致：[-0.1262, 0.1080, -0.1792]", close, "取 X 之前没有重设种子")
confirm("no_grad 不改变结果", torch.equal(out, quiet), "模型里有 dropout，又没有 eval()")
close = torch.allclose(probas, torch.tensor([[0.3113, 0.3934, 0.2952]]), atol=1e-4)
confirm("概率与原书一致：[0.3113, 0.3934, 0.2952]", close, "softmax 的 dim 写成了 0")

# %% 动手改
# 1. 把 softmax 的 dim=1 改成 dim=0：概率全变成 1。为什么？（沿着批的方向，一列只有一个数）
# 2. 去掉 super().__init__()，看报什么错；改回来，再把 nn.Sequential(…) 换成普通列表 […]：
#    参数变成 0 个，因为普通列表里的层没有登记；到前向时报错，因为列表不能当函数调用。
# 3. 把 X 的形状改成 (4, 50)：输出是什么形状？参数要不要变？（有两条自查会变成 ✗，因为那是一个样本的答案）
