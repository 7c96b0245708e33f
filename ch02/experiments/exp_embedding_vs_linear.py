"""第 2 章 · 实验　嵌入层就是线性层，那为什么不用线性层？

问题：　查表（Embedding）与 one-hot 乘矩阵（Linear）结果相同，词表有 5 万个词元时，后者慢多少、多占多少内存？
先猜：　词表大 10 倍，查表会慢几倍？one-hot 乘矩阵呢？（先想 10 秒，再运行）
看点：　① 输出和梯度都逐个相同；② one-hot 的前向跟着词表走；查表一次乘法也不做，只在表大到缓存放不下时，取数才慢下来；
        ③ 查表的反向却要跟着词表走：用到的只有几行，梯度仍是整张表。
动手改：1. 把 --dim 改成 64：两边都快了，但词表越大差得越远，这一点不变。
        2. 把 lookup 里的 embedding(ids) 换成 F.embedding(ids, embedding.weight, sparse=True)（先 import torch.nn.functional as F）：
           梯度变成稀疏的，只存用到的那几行；"梯度"那一列和反向的用时，都不再跟着词表变大。

运行：
    python ch02/experiments/exp_embedding_vs_linear.py            # 图片写到 ch02/outputs/
    python ch02/experiments/exp_embedding_vs_linear.py --dim 64
    约 10 秒，1.2 GB（2 核 CPU）

形状记号：n 词元数　d 嵌入维度　V 词表大小
"""

import argparse
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
TOKENS = 1024  # 每次编码几个词元：GPT-2 一个样本的长度


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def make_pair(vocab_size, dim):
    """建一个嵌入层，和一个与它权重相同的线性层。

    参数:
        vocab_size (int): 词表大小 V
        dim (int): 嵌入维度 d

    返回:
        tuple[nn.Embedding, nn.Linear]: 嵌入层与线性层
    """
    torch.manual_seed(123)
    embedding = nn.Embedding(vocab_size, dim)
    linear = nn.Linear(vocab_size, dim, bias=False)
    # nn.Linear 算的是 x·Wᵀ，权重的形状是 (d, V)，正好是嵌入表的转置。
    linear.weight = nn.Parameter(embedding.weight.detach().T.contiguous())
    return embedding, linear


def lookup(embedding, ids):
    """查表：第 i 个词元的编号是几，就取第几行。

    参数:
        embedding (nn.Embedding): 嵌入层
        ids (Tensor): 词元编号，(n,)

    返回:
        Tensor: 嵌入，(n, d)
    """
    return embedding(ids)


def multiply(linear, ids):
    """one-hot 乘矩阵：每个编号先变成 V 个数，只有一个是 1，再与矩阵相乘，V 次乘法里有 V - 1 次是乘 0。

    参数:
        linear (nn.Linear): 线性层
        ids (Tensor): 词元编号，(n,)

    返回:
        Tensor: 嵌入，(n, d)
    """
    onehot = nn.functional.one_hot(ids, num_classes=linear.in_features).float()  # (n, V)
    return linear(onehot)


def measure(way, layer, ids):
    """前向、反向各用多久，梯度占多大。

    参数:
        way (callable): lookup 或 multiply
        layer (nn.Module): 嵌入层或线性层
        ids (Tensor): 词元编号，(n,)

    返回:
        tuple[float, float, int]: 前向秒数、反向秒数、梯度的字节数
    """
    forward, backward = [], []
    began = time.perf_counter()
    # 查表只要零点几毫秒，容易被别的程序打扰：多量几次取最快的；慢的量满半秒就够了。头一次要分配内存，不算。
    while len(forward) < 4 or (len(forward) < 50 and time.perf_counter() - began < 0.5):
        layer.weight.grad = None
        start = time.perf_counter()
        output = way(layer, ids)
        middle = time.perf_counter()
        output.backward(torch.ones_like(output))
        forward.append(middle - start)
        backward.append(time.perf_counter() - middle)
    grad = layer.weight.grad
    numbers = grad._values().numel() if grad.is_sparse else grad.numel()
    return min(forward[1:]), min(backward[1:]), numbers * 4


def agree(embedding, linear, ids):
    """两种做法的输出相同吗？梯度呢？

    参数:
        embedding (nn.Embedding): 嵌入层，已经反向传播过
        linear (nn.Linear): 权重相同的线性层，同上
        ids (Tensor): 词元编号，(n,)

    返回:
        bool: 都相同为 True
    """
    with torch.no_grad():
        same = torch.allclose(lookup(embedding, ids), multiply(linear, ids), atol=1e-6)
    grad = embedding.weight.grad.to_dense()  # (V, d)　用了 sparse=True 时是稀疏的，先摊开
    return same and torch.allclose(grad, linear.weight.grad.T, atol=1e-4)


def draw(sizes, rows, path):
    """画图：左边用时，右边多占的内存，都是对数坐标。

    参数:
        sizes (list[int]): 各个词表大小
        rows (dict): 做法和词表大小 → measure 的结果
        path (Path): 图片写到哪里
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    names = {"lookup": "查表", "multiply": "one-hot 乘矩阵"}
    for color, (way, name) in zip(("C0", "C1"), names.items()):
        left.loglog(sizes, [rows[way, v][0] * 1e3 for v in sizes], "o-", color=color, label=f"{name}：前向")
        left.loglog(sizes, [rows[way, v][1] * 1e3 for v in sizes], "s--", color=color, label=f"{name}：反向")
        # 每个编号 8 字节；one-hot 每个词元 V 个 float32。
        size = [TOKENS * 8 / 1e6 if way == "lookup" else TOKENS * v * 4 / 1e6 for v in sizes]
        right.loglog(sizes, size, "o-", color=color, label=name)
    left.set(xlabel="词表大小 V", ylabel="毫秒", title=f"{TOKENS} 个词元的用时")
    right.set(xlabel="词表大小 V", ylabel="MB", title="输入占的内存")
    for axis in (left, right):
        axis.legend(fontsize=9)
        axis.grid(alpha=0.3)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight", pad_inches=0.15)
    plt.close(figure)


def main():
    """先用书上的小例子证明相同，再把词表一步步放大。"""
    parser = argparse.ArgumentParser(description="实验　嵌入层与线性层")
    parser.add_argument("--dim", type=int, default=256, help="嵌入维度 d，1 到 1024（默认：256）")
    parser.add_argument("--quick", action="store_true", help="词表只放大到 1 万")
    args = parser.parse_args()
    if not 1 <= args.dim <= 1024:
        parser.error(f"--dim 应在 1 到 1024 之间，不能是 {args.dim}")

    torch.set_num_threads(1)  # 查表只要几十微秒，几个线程互相等，用时就乱跳
    print("一、书上的例子：4 个词元的词表，嵌入维度 5，编码 [2, 3, 1]")
    embedding, linear = make_pair(4, 5)
    ids = torch.tensor([2, 3, 1])
    small = lookup(embedding, ids)  # (3, 5)
    print("查表", small.detach())
    print("one-hot 乘矩阵", multiply(linear, ids).detach())

    print(f"\n二、放大词表：每次 {TOKENS} 个词元，d = {args.dim}")
    sizes = [100, 1000, 10_000] if args.quick else [100, 1000, 10_000, 50_257]
    rows, same = {}, True
    for vocab_size in sizes:
        embedding, linear = make_pair(vocab_size, args.dim)
        ids = torch.randint(0, vocab_size, (TOKENS,))
        for way, layer in ((lookup, embedding), (multiply, linear)):
            rows[way.__name__, vocab_size] = measure(way, layer, ids)
        same = same and agree(embedding, linear, ids)
        for way, name in (("lookup", "查表"), ("multiply", "one-hot")):
            forward, backward, grad = rows[way, vocab_size]
            print(f"  V = {vocab_size:6}　{name}　前向 {forward * 1e3:8.3f} 毫秒　反向 {backward * 1e3:8.3f} 毫秒　梯度 {grad / 1e6:7.2f} MB")

    big, first = sizes[-1], sizes[0]
    slower = rows["multiply", big][0] / rows["lookup", big][0]
    grown = {way: rows[way, big][0] / rows[way, first][0] for way in ("lookup", "multiply")}
    draw(sizes, rows, OUTPUTS / "embedding_vs_linear.png")
    print(f"图已写到 {OUTPUTS / 'embedding_vs_linear.png'}")
    print(f"\n所以：V = {big} 时，one-hot 的前向比查表慢 {slower:,.0f} 倍，输入占 {TOKENS * big * 4 / 1e6:.0f} MB 而不是 {TOKENS * 8 / 1e6:.3f} MB。")
    why = "（表大了，缓存里放不下）" if grown["lookup"] > 2 else ""
    print(f"词表从 {first} 放大到 {big}（{big / first:.0f} 倍），one-hot 的前向变成 {grown['multiply']:.0f} 倍，查表的变成 {grown['lookup']:.1f} 倍{why}。")
    backward = rows["lookup", big][1] / rows["lookup", first][1]
    print(f"查表的反向变成 {backward:.0f} 倍：只用到几行，PyTorch 默认却给整张表都准备了梯度（{rows['lookup', big][2] / 1e6:.1f} MB）。")

    print("\n这个数字对吗？")
    book = torch.tensor([0.6957, -1.8061, -1.1589, 0.3255, -0.6315])
    confirm("第一行与书上附带材料相同：0.6957, -1.8061, -1.1589, 0.3255, -0.6315", torch.allclose(small[0], book, atol=1e-4), "种子不是 123，或建表之前用过随机数")
    confirm("各种词表大小下，输出与梯度都相同", same, "权重没有转置")
    confirm("one-hot 比查表慢", slower > 1, "词表太小，或者机器正忙")


if __name__ == "__main__":
    main()
