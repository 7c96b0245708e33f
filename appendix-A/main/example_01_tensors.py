"""附录 A · A.1–A.2 节　张量（tensor）：后面每一行代码的主角

读完你应该能回答：
    1. 标量、向量、矩阵和张量是什么关系？形状（shape）里的每个数说的是什么？
    2. torch.tensor 与 torch.from_numpy，哪个复制、哪个共享内存？什么时候会被它坑到？
    3. view 与 reshape 差在哪里？转置之后为什么 view 会报错？

运行：
    python appendix-A/main/example_01_tensors.py
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 2 秒，0.3 GB（2 核 CPU）

这一节还用不到全书的形状记号（b、t、d……），形状直接写数字，如 # (2, 3)。
"""

import numpy as np
import torch


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion

# %% A.1　PyTorch 由三样东西组成
# ① 张量库：像 NumPy 的数组，但能搬到 GPU 上算（这个脚本和 example_05）；
# ② 自动求导（autograd）：只写前向的公式，梯度它来算（example_02）；
# ③ 深度学习的零件：网络层、损失函数、优化器、数据加载器（example_03、example_04）。
# 版本号末尾的 +cpu、+cu126 之类，说的是装了哪一种；macOS 上没有，MPS 总是带着的。
print(f"【A.1】PyTorch {torch.__version__}")
gpus = {"CUDA": torch.cuda.is_available(), "MPS": torch.backends.mps.is_available()}
print("能用的 GPU：", "、".join(name for name, found in gpus.items() if found) or "没有；不要紧，用 CPU 就能学完本书")

# %% A.2.1　标量、向量、矩阵、张量：差别只在有几维
# 几维，就是要用几个下标才能取到一个数：标量 0 个，向量 1 个，矩阵 2 个……"张量"是它们的总称。
tensor0d = torch.tensor(1)  # ()　形状是空的，不是 (1,)
tensor1d = torch.tensor([1, 2, 3])  # (3,)
tensor2d = torch.tensor([[1, 2], [3, 4]])  # (2, 2)
tensor3d_1 = torch.tensor([[[1, 2], [3, 4]], [[5, 6], [7, 8]]])  # (2, 2, 2)
print("\n【A.2.1】维数与形状")
for name, each in [("标量", tensor0d), ("向量", tensor1d), ("矩阵", tensor2d), ("3 维张量", tensor3d_1)]:
    print(f"  {name}　ndim = {each.ndim}　shape = {tuple(each.shape)}")
print(f"标量取出成 Python 的数：{tensor0d.item()}（超过一个元素的张量不能用 item()，用 tolist()）")

# %% 从 NumPy 来：一个复制，一个共享
# torch.tensor 总是另抄一份；torch.from_numpy 不抄，两边是同一块内存，谁改了对方都看得见。
# 共享省内存、不花时间，大数组要用它；但原数组之后若还会改，就用 torch.tensor，免得被悄悄改掉。
ary3d = np.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]]])
tensor3d_2 = torch.tensor(ary3d)  # (2, 2, 2)
tensor3d_3 = torch.from_numpy(ary3d)  # (2, 2, 2)
ary3d[0, 0, 0] = 999
print("\n改了 NumPy 数组的一个数 ary3d[0, 0, 0] = 999 之后")
print("torch.tensor 的那份：")
print(tensor3d_2)
print("torch.from_numpy 的那份：")
print(tensor3d_3)

# %% A.2.2　数据类型：整数默认 int64，小数默认 float32
# Python 和 NumPy 的小数都是 64 位的，PyTorch 默认却是 32 位：神经网络用不着 16 位有效数字，
# 换成一半的内存、GPU 上快得多的速度，更划算。
floatvec = torch.tensor([1.0, 2.0, 3.0])
default_types = (tensor1d.dtype, floatvec.dtype)
print(f"\n【A.2.2】整数列表 → {tensor1d.dtype}　小数列表 → {floatvec.dtype}")
floatvec = tensor1d.to(torch.float32)  # 得到一份新的，tensor1d 自己还是 int64
print(f"tensor1d.to(torch.float32) → {floatvec.dtype}")

# %% 陷阱：从 NumPy 来的小数是 float64
# 与模型的 float32 参数相乘就报错；MPS 根本不支持 float64。所以读进来先 .float()。
from_numpy = torch.from_numpy(np.array([1.0, 2.0, 3.0]))
print(f"NumPy 的数组 → {from_numpy.dtype}，.float() 之后 → {from_numpy.float().dtype}")
try:
    from_numpy @ floatvec
except RuntimeError as error:
    print(f"  与 float32 的张量相乘：RuntimeError: {error}")  # Double 就是 float64，Float 是 float32，Long 是 int64

# %% A.2.3　常用运算：形状、变形、转置、矩阵乘法
tensor2d = torch.tensor([[1, 2, 3], [4, 5, 6]])  # (2, 3)
print("\n【A.2.3】2 行 3 列的矩阵")
print(tensor2d)
print(f"shape = {tensor2d.shape}（先行数，后列数）")

# 变形不动次序：把 6 个数按一行行的次序念一遍，再按新的行列重新断行。
print("reshape(3, 2)：")
print(tensor2d.reshape(3, 2))
print("view(3, 2)：")
print(tensor2d.view(3, 2))
print("其中一维可以写 -1，让 PyTorch 自己算：reshape(-1, 2) 的形状是", tuple(tensor2d.reshape(-1, 2).shape))

# 转置是行列互换，次序就变了：形状同样是 (3, 2)，内容却与 reshape(3, 2) 不同。形状对，不等于算得对。
print("转置 T：")
print(tensor2d.T)

# %% 矩阵乘法：(2, 3) @ (3, 2) → (2, 2)，中间的两个 3 必须相等
# matmul 与 @ 是一回事，@ 写起来短。
print("matmul(T)：")
print(tensor2d.matmul(tensor2d.T))
print("@ T：")
product = tensor2d @ tensor2d.T  # (2, 2)
print(product)
print(f"第 1 行第 2 列 = 第 1 行 · 第 2 行 = 1×4 + 2×5 + 3×6 = {product[0, 1].item()}")
print("陷阱：* 是逐个相乘，形状不变，不是矩阵乘法")
print(tensor2d * tensor2d)

# %% view 与 reshape：转置之后，view 就不行了
# 张量 = 一块一维的内存 + 一套读法（形状和 stride：每一维走一步，内存里跳几格）。
# 转置只换读法，内存一个数都不动，所以瞬间完成；可按行念的次序，就与内存里的次序不同了（不连续，non-contiguous）。
# view 也只换读法，次序对不上，它就报错；reshape 会在必要时另抄一份，于是总能成功。
transposed = tensor2d.T  # (3, 2)
print(f"\nstride：原来 {tensor2d.stride()}，转置 {transposed.stride()}　转置连续吗？{transposed.is_contiguous()}")
print(f"转置与原来是同一块内存吗？{transposed.data_ptr() == tensor2d.data_ptr()}")
try:
    transposed.view(6)
except RuntimeError as error:
    print(f"  transposed.view(6)：RuntimeError: {str(error).split(' (')[0]}…")
flat = transposed.reshape(6)  # (6,)
also_flat = transposed.contiguous().view(6)  # (6,)　contiguous() 先照新次序抄一份；第 3 章的多头注意力用的就是它
print("reshape(6)：", flat.tolist(), "　contiguous().view(6)：", also_flat.tolist())

# view 得到的与原来共用内存，改一个，另一个也变；reshape 有时共用有时不共用，所以不要去改 reshape 的结果。
# 想要一份独立的，写清楚：clone()。
original = torch.arange(6)
window, copied = original.view(2, 3), original.clone()  # (2, 3), (6,)
original[0] = 100
print(f"改了 original[0]：view 里是 {window[0, 0].item()}，clone 里是 {copied[0].item()}")

# %% 这个数字对吗？
print("\n这个数字对吗？")
confirm("torch.tensor 是复制：第一个数还是 1", tensor3d_2[0, 0, 0] == 1, "用成了 torch.from_numpy 或 torch.as_tensor")
confirm("torch.from_numpy 是共享：第一个数变成了 999", tensor3d_3[0, 0, 0] == 999, "中间用过 clone() 或 .to(别的类型)")
confirm("默认类型是 int64 和 float32", default_types == (torch.int64, torch.float32), "调用过 torch.set_default_dtype")
book = torch.tensor([[14, 32], [32, 77]])
confirm("与自己的转置相乘，与原书一致：[[14, 32], [32, 77]]", torch.equal(product, book), "用了 * 而不是 @，或忘了转置")
confirm("转置后 reshape 是一列一列念：1, 4, 2, 5, 3, 6", flat.tolist() == [1, 4, 2, 5, 3, 6], "在转置之前就变了形")

# %% 动手改
# 1. 把 np.array([1.0, 2.0, 3.0]) 改成 np.array([1, 2, 3])，看 from_numpy 的类型和那句报错：整数也不会自动变成小数。
# 2. 把 tensor2d @ tensor2d.T 改成 tensor2d @ tensor2d，读懂报错里的两个形状：哪两个数应该相等？
# 3. 试试 tensor3d_1.T：维数大于 2 时 T 有歧义，PyTorch 会警告；写成 tensor3d_1.transpose(1, 2) 才说得清换哪两维。
