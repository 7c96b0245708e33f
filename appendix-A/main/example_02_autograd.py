"""附录 A · A.3–A.4 节　计算图与自动求导（autograd）

读完你应该能回答：
    1. 计算图（computation graph）记的是什么？损失怎样沿着它走回每个参数？
    2. grad() 与 backward() 有什么不同？梯度放在哪里，为什么只有"叶子"才有？
    3. 同一个损失为什么不能 backward 两次？梯度为什么会越加越多？

运行：
    python appendix-A/main/example_02_autograd.py
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 2 秒，0.3 GB（2 核 CPU）

这两节的张量都只有 1 个数，形状 (1,)：先在一个神经元上看懂，再到 example_03 里换成一层一层的。
"""

import math

import torch
import torch.nn.functional as F
from torch.autograd import grad


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion

# %% A.3　逻辑回归：最小的一张计算图
# 一个神经元：输入 x1 乘权重 w1，加偏置 b，过 sigmoid 变成 0 到 1 之间的概率 a，再与正确答案 y 比，得到损失。
#     x1 ─┐
#         × ── u ── + ── z ── sigmoid ── a ── 二元交叉熵 ── loss
#     w1 ─┘         │                            │
#              b ───┘                       y ───┘
y = torch.tensor([1.0])  # 正确答案：这个样本属于第 1 类
x1 = torch.tensor([1.1])  # 输入
w1 = torch.tensor([2.2])  # 权重，训练要改的就是它
b = torch.tensor([0.0])  # 偏置，也要改

z = x1 * w1 + b
a = torch.sigmoid(z)
# 二元交叉熵：loss = -[y ln a + (1 - y) ln(1 - a)]；y = 1 时只剩 -ln a：给正确答案的概率越接近 1，损失越接近 0。
loss = F.binary_cross_entropy(a, y)
print(f"【A.3】z = {z.item():.4f}　a = {a.item():.4f}　损失")
print(loss)
by_hand = -(y.item() * math.log(a.item()) + (1 - y.item()) * math.log(1 - a.item()))
print(f"手算 {by_hand:.4f}　grad_fn 是 {loss.grad_fn}")  # None：没有一个张量要求梯度，PyTorch 就没有记账

# %% A.4　requires_grad=True：从这里开始记账
# 只要参与计算的张量里有一个要求梯度，算出来的张量就会带上 grad_fn：它是谁算出来的、原料是谁。
# 一环扣一环，就是计算图。它在前向计算时边算边建，每次前向都是一张新图（所以可以放心用 if 和 for）。
w1 = torch.tensor([2.2], requires_grad=True)
b = torch.tensor([0.0], requires_grad=True)
z = x1 * w1 + b
a = torch.sigmoid(z)
loss = F.binary_cross_entropy(a, y)

print("\n【A.4】从损失往回走，经过的每一步：")
node, steps = loss.grad_fn, []
while node is not None:
    steps.append(node.name().split("::")[-1])
    node = next((source for source, _ in node.next_functions if source is not None), None)  # x1 那一格是 None，跳过
print("  " + " → ".join(steps))  # 最后的 AccumulateGrad 就是"把梯度加到 w1.grad 上"；"加"字后面有陷阱

# %% 第一种：grad()，点名要谁的梯度
# 它把结果还给你，不往任何张量里存。retain_graph=True：算完先别拆图，后面还要再算一次。
grad_L_w1 = grad(loss, w1, retain_graph=True)
grad_L_b = grad(loss, b, retain_graph=True)
print("\n用 grad()：")
print("损失对 w1 的梯度", grad_L_w1)
print("损失对 b 的梯度　", grad_L_b)
print(f"w1.grad 还是 {w1.grad}")

# %% 第二种：backward()，所有叶子一次算完，训练时用它
loss.backward()
print("\n用 backward()：")
print("w1.grad", w1.grad)
print("b.grad　", b.grad)
first_grads = [w1.grad.item(), b.grad.item()]  # 记下来，后面 w1.grad 还会变

# %% 手算一遍：链式法则（chain rule）
# ∂loss/∂w1 = ∂loss/∂a · ∂a/∂z · ∂z/∂w1，一环一环乘回去（y = 1 时）：
#     ∂loss/∂a = -1/a　　∂a/∂z = a (1 - a)　　∂z/∂w1 = x1　　∂z/∂b = 1
# 前两个乘起来正好是 a - y：预测减答案。"交叉熵 + sigmoid（或 softmax）"的梯度总是这么干净，这正是它们配对使用的原因。
dz = a.item() - y.item()
print(f"\n手算：a - y = {dz:.4f}　乘 x1 得 {dz * x1.item():.4f}　乘 1 得 {dz:.4f}")
print("两个梯度都是" + ("负的：w1 或 b 增大一点，损失就变小。" if dz < 0 else "正的：w1 或 b 减小一点，损失才变小。"))

# %% 走一步试试：往梯度的反方向
# 更新参数这一步不该记进计算图（它不是模型的一部分），所以放在 no_grad 里；优化器的 step() 就是替你做这件事。
step_size = 0.1
before = loss.item()
with torch.no_grad():
    stepped_w1 = w1 - step_size * w1.grad
    stepped_b = b - step_size * b.grad
    after = F.binary_cross_entropy(torch.sigmoid(x1 * stepped_w1 + stepped_b), y).item()
print(f"\n走一步，步长 {step_size}：损失 {before:.4f} → {after:.4f}")

# %% 陷阱一：只有叶子才留着梯度
# 叶子（leaf）是你自己建的张量；z、a 是算出来的，中间产物的梯度用完就丢，否则大模型的内存装不下。
# 真想看中间的梯度（比如查梯度消失），在 backward 之前对它调用 retain_grad()。
z = x1 * w1 + b
z.retain_grad()
F.binary_cross_entropy(torch.sigmoid(z), y).backward()
print(f"\n陷阱一　是叶子吗？ w1 {w1.is_leaf}　z {z.is_leaf}　retain_grad() 之后 z.grad = {z.grad.item():.4f}")

# %% 陷阱二：梯度会累加
# backward 做的是 w1.grad += 新梯度。上面一共 backward 了两次，现在的 w1.grad 是一次的两倍。
# 这样设计是有用的：内存不够时，几个小批的梯度攒起来再更新一次（梯度累积）；共享的参数也能把各处的梯度加在一起。
# 代价是每一步都要记得清零：训练循环里的 optimizer.zero_grad()。忘了它不报错，只是学不好。
twice = w1.grad.item()
print(f"\n陷阱二　backward 两次之后 w1.grad = {twice:.4f}")
w1.grad = b.grad = None  # zero_grad() 默认也是设成 None：比填 0 省内存，下一次直接放进新的
F.binary_cross_entropy(torch.sigmoid(x1 * w1 + b), y).backward()
print(f"清零再 backward：w1.grad = {w1.grad.item():.4f}")

# %% 陷阱三：同一张图只能倒着走一次
# 反向时要用到前向的中间结果（比如 a），它们占内存，所以走完一遍就释放了，再走就没有原料了。
# 训练时不必理会：每一步都重新前向，图是新的。看到下面这句报错，多半是在循环外面算了一次损失，却在循环里反复 backward。
loss = F.binary_cross_entropy(torch.sigmoid(x1 * w1 + b), y)
loss.backward()
second_error = ""
try:
    loss.backward()
except RuntimeError as error:
    second_error = str(error).split(" (")[0]
print(f"\n陷阱三　再 backward 一次：{second_error or '没有报错'}…")

# %% 这个数字对吗？
print("\n这个数字对吗？")
shown = f"{before:.4f}"
confirm(f"损失与原书一致：0.0852（得到 {shown}）", shown == "0.0852", "sigmoid 写成了别的激活函数，或 y 不是 1.0")
shown = f"{grad_L_w1[0].item():.4f} 和 {grad_L_b[0].item():.4f}"
confirm(f"grad() 与原书一致：-0.0898 和 -0.0817（得到 {shown}）", shown == "-0.0898 和 -0.0817", "w1、b 的次序反了")
same = first_grads == [grad_L_w1[0].item(), grad_L_b[0].item()]
confirm("backward() 与 grad() 相同", same, "backward 之前没有清零，梯度累加了")
confirm("与手算的链式法则相同", abs(dz * x1.item() - grad_L_w1[0].item()) < 1e-6, "漏乘了 x1，或 a - y 的次序反了")
confirm("backward 两次，梯度是两倍", abs(twice - 2 * grad_L_w1[0].item()) < 1e-6, "中间清零过")
confirm("往梯度的反方向走一步，损失变小", after < before, "加号减号写反了，或步长太大")
confirm("同一张图不能倒着走两次", second_error != "", "第一次 backward 时写了 retain_graph=True")

# %% 动手改
# 1. 把 y 改成 0.0：损失变成 2.5052，梯度的正负也反过来了，为什么？（有两条自查会变成 ✗，因为那是 y = 1 的答案）
# 2. 把 step_size 改成 -0.1，看损失往哪边走；再改成 100：损失一步就到 0，这是因为只有一个样本，
#    样本一多，这样大的步子就会顾此失彼。
# 3. 把陷阱三里第一个 loss.backward() 改成 loss.backward(retain_graph=True)：不报错了，最后一条自查会变成 ✗。
