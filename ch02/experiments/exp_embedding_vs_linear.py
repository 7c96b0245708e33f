"""第 2 章 · 实验　嵌入层就是线性层，那为什么不用线性层？

问题：　查表（Embedding）与 one-hot 乘矩阵（Linear）结果相同，词表有 5 万个词元时，后者慢多少、多占多少内存，时间花在哪里？
先猜：　词表大 10 倍，查表会慢几倍？one-hot 乘矩阵呢？其中真正在做乘法的占几成？（先想 10 秒，再运行）
看点：　① 输出和梯度都逐个相同；② one-hot 的用时跟着词表走，而且大半花在准备输入上：先建 int64 的 0 和 1，再转成 float32；
        ③ 内存是量的，不是算的：前向时，同时活着的张量最多占多少；④ 查表的反向也跟着词表走：用到的只有几行，梯度默认是整张表。
动手改：1. --dim 64：乘法便宜了，one-hot 的用时里，准备输入占得更多。
        2. 把 lookup 里的 embedding(ids) 换成 nn.functional.embedding(ids, embedding.weight, sparse=True)：
           梯度变成稀疏的，只存用到的那几行；"梯度"那一列不再跟着词表变大，最后的结论也跟着变。

运行：
    python ch02/experiments/exp_embedding_vs_linear.py            # 图片写到 ch02/outputs/
    python ch02/experiments/exp_embedding_vs_linear.py --dim 64
    约 15 秒，1.4 GB（2 核 CPU）

形状记号：n 词元数　d 嵌入维度　V 词表大小
"""

import argparse
import statistics
import time
import weakref
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from torch.utils._python_dispatch import TorchDispatchMode

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
TOKENS = 1024  # 每次编码几个词元：GPT-2 一个样本的长度


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


# region 沿用 ch03/experiments/exp_attention_complexity.py: take_turns, quartiles, compare
def take_turns(works, rounds, device=None):
    """轮流计时：每一轮把几份各做一遍，电脑忽快忽慢时大家一起快慢，比较才公平。（详解见 ch03/experiments/exp_attention_complexity.py）"""
    on_gpu, times = device is not None and device.type != "cpu", {name: [] for name in works}
    clock = time.perf_counter if on_gpu or torch.get_num_threads() > 1 else time.process_time
    for turn in range(rounds + 1):
        for name, work in works.items():
            start = clock()
            work()
            if on_gpu:
                torch.get_device_module(device).synchronize()
            if turn:
                times[name].append(clock() - start)
    return times


def quartiles(values):
    """量了许多次，中间一半落在哪里。只报一个平均，看不出机器忙不忙。（详解见 ch03/experiments/exp_attention_complexity.py）"""
    return tuple(statistics.quantiles(values, n=4, method="inclusive"))


def compare(values, reference):
    """甲是乙的几倍；两边中间的一半重叠了，就说分不出。（详解见 ch03/experiments/exp_attention_complexity.py）"""
    (low, middle, high), (floor, center, ceiling) = quartiles(values), quartiles(reference)
    ratio = f"{middle / center:.2f} 倍"
    return ratio if high < floor or low > ceiling else f"分不出（中位数是 {ratio}）"


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
    onehot = nn.functional.one_hot(ids, num_classes=linear.in_features)  # (n, V)　int64，每个数 8 字节
    return linear(onehot.float())  # 线性层要 float32，又是一份 (n, V)


class Peak(TorchDispatchMode):
    """旁观者：在 with 里面，每算出一个张量就把它的字节数加上，张量没人用了再减掉，记住最多时是多少。

    PyTorch 的每个底层函数都会先经过 __torch_dispatch__；weakref.finalize 在张量被回收时叫一声。
    """

    def __init__(self):
        super().__init__()
        self.now = self.most = 0

    def change(self, amount):
        """多了或少了几字节。

        参数:
            amount (int): 字节数，少了是负的
        """
        self.now += amount
        self.most = max(self.most, self.now)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """原样调用，再把新的张量记上。

        参数:
            func (callable): 底层函数
            types (tuple): 参数里有哪些张量类型
            args (tuple): 位置参数
            kwargs (dict 或 None): 关键字参数

        返回:
            底层函数的结果
        """
        result = func(*args, **(kwargs or {}))
        old = {each.untyped_storage().data_ptr() for each in args if isinstance(each, torch.Tensor)}
        if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in old:  # 视图和就地修改没有新的内存
            size = result.untyped_storage().nbytes()
            self.change(size)
            weakref.finalize(result, self.change, -size)
        return result


def peak_bytes(way, layer, ids):
    """前向时，同时活着的张量最多占多少字节；权重本来就在，不算。

    参数:
        way (callable): lookup 或 multiply
        layer (nn.Module): 嵌入层或线性层
        ids (Tensor): 词元编号，(n,)

    返回:
        int: 字节数
    """
    with torch.no_grad(), Peak() as peak:
        way(layer, ids)
    return peak.most + ids.nbytes


def measure(embedding, linear, ids, rounds):
    """查表和 one-hot 乘矩阵的各步，轮流计时。

    参数:
        embedding (nn.Embedding): 嵌入层
        linear (nn.Linear): 权重相同的线性层
        ids (Tensor): 词元编号，(n,)
        rounds (int): 几轮

    返回:
        dict[str, list[float]]: 步骤 → 每一轮几秒
    """
    integers = nn.functional.one_hot(ids, num_classes=linear.in_features)  # (n, V)
    floats = integers.float()  # (n, V)
    outputs = {way: way(layer, ids) for way, layer in ((lookup, embedding), (multiply, linear))}
    upstream = torch.ones_like(outputs[lookup])  # (n, d)

    def backward(way, layer):
        layer.weight.grad = None
        outputs[way].backward(upstream, retain_graph=True)

    with torch.no_grad():
        forward = take_turns({"查表": lambda: lookup(embedding, ids), "one-hot": lambda: multiply(linear, ids)}, rounds)
        steps = {
            "建 one-hot": lambda: nn.functional.one_hot(ids, num_classes=linear.in_features),
            "转成 float32": lambda: integers.float(),
            "乘矩阵": lambda: linear(floats),
        }
        forward |= take_turns(steps, rounds)
    return forward | take_turns({"查表的反向": lambda: backward(lookup, embedding), "one-hot 的反向": lambda: backward(multiply, linear)}, rounds)


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


def draw(times, memory, path):
    """画图：左边用时，中间 one-hot 的用时分成三步，右边量得的内存。

    参数:
        times (dict): 词表大小 → measure 的结果
        memory (dict): 词表大小 → （查表，one-hot）的字节数
        path (Path): 图片写到哪里
    """
    sizes = list(times)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for name, color, style in (("查表", "C0", "-"), ("查表的反向", "C0", "--"), ("one-hot", "C1", "-"), ("one-hot 的反向", "C1", "--")):
        low, center, high = ([quartiles(times[v][name])[i] * 1e3 for v in sizes] for i in range(3))
        left.loglog(sizes, center, style, marker="o", markersize=4, color=color, label=name)
        left.fill_between(sizes, low, high, color=color, alpha=0.2)
    bottom, labels = [0.0] * len(sizes), [f"{v:,}" for v in sizes]
    for name, color in (("建 one-hot", "#fdae6b"), ("转成 float32", "#fdd0a2"), ("乘矩阵", "#9ecae1")):
        share = [100 * statistics.median(times[v][name]) / sum(statistics.median(times[v][each]) for each in ("建 one-hot", "转成 float32", "乘矩阵")) for v in sizes]
        middle.bar(labels, share, bottom=bottom, color=color, label=name)
        bottom = [a + b for a, b in zip(bottom, share)]
    for i, name in enumerate(("查表", "one-hot 乘矩阵")):
        right.loglog(sizes, [memory[v][i] / 1e6 for v in sizes], "o-", color=f"C{i}", label=name)
    left.set(xlabel="词表大小 V", ylabel="毫秒", title=f"{TOKENS} 个词元的用时（色带：四分位）")
    middle.set(xlabel="词表大小 V", ylabel="百分之几", title="one-hot 的前向，时间花在哪里")
    right.set(xlabel="词表大小 V", ylabel="MB", title="前向时张量最多占的内存（量的）")
    for axis in (left, middle, right):
        axis.legend(fontsize=8)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    """先用书上的小例子证明相同，再把词表一步步放大。"""
    parser = argparse.ArgumentParser(description="实验　嵌入层与线性层")
    parser.add_argument("--dim", type=int, default=256, help="嵌入维度 d，1 到 1024（默认：256）")
    parser.add_argument("--quick", action="store_true", help="词表只放大到 5000")
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

    print(f"\n二、放大词表：每次 {TOKENS} 个词元，d = {args.dim}；下面的用时是毫秒，括号里是四分位，一列一种词表")
    sizes, rounds = ([100, 1000, 5000], 5) if args.quick else ([100, 1000, 10_000, 50_257], 9)
    times, memory, gradients, same = {}, {}, {}, True
    for v in sizes:
        embedding, linear = make_pair(v, args.dim)
        ids = torch.randint(0, v, (TOKENS,))
        times[v] = measure(embedding, linear, ids, rounds)
        memory[v] = [peak_bytes(way, layer, ids) for way, layer in ((lookup, embedding), (multiply, linear))]
        grad = embedding.weight.grad
        gradients[v] = (grad._values().numel() if grad.is_sparse else grad.numel()) * 4
        same = same and agree(embedding, linear, ids)
        print(f"  V = {v:6}　量得的内存：查表 {memory[v][0] / 1e6:.2f} MB，one-hot {memory[v][1] / 1e6:.2f} MB；查表的梯度 {gradients[v] / 1e6:.2f} MB")
    for name in times[sizes[0]]:
        cells = [[f"{value * 1e3:.2f}" for value in quartiles(times[v][name])] for v in sizes]
        print(f"  {name}　" + "　".join(f"{middle}（{low}–{high}）".ljust(20) for low, middle, high in cells))
    draw(times, memory, OUTPUTS / "embedding_vs_linear.png")
    print(f"图已写到 {OUTPUTS / 'embedding_vs_linear.png'}")

    first, big = sizes[0], sizes[-1]
    prepare = [statistics.median(times[big][name]) for name in ("建 one-hot", "转成 float32", "乘矩阵")]
    print(f"\n所以：V = {big} 时，one-hot 的前向用时是查表的 {compare(times[big]['one-hot'], times[big]['查表'])}，内存是 {memory[big][1] / memory[big][0]:.0f} 倍；")
    print(f"　　　one-hot 的用时里，准备输入（建、转）占 {sum(prepare[:2]) / sum(prepare):.0%}，真正的乘法占 {prepare[2] / sum(prepare):.0%}。")
    print(f"　　　词表从 {first} 到 {big}（{big / first:.0f} 倍），one-hot 的前向变成 {compare(times[big]['one-hot'], times[first]['one-hot'])}，查表的 {compare(times[big]['查表'], times[first]['查表'])}，", end="")
    print(f"查表的反向 {compare(times[big]['查表的反向'], times[first]['查表的反向'])}。")
    used = TOKENS * args.dim * 4
    whole = gradients[big] == big * args.dim * 4
    print(f"　　　查表的梯度占 {gradients[big] / 1e6:.2f} MB：" + ("整张表都有，用到的最多只有" if whole else "只存用到的那几行，整张表的一部分，最多") + f" {used / 1e6:.2f} MB。")

    print("\n这个数字对吗？")
    book = torch.tensor([0.6957, -1.8061, -1.1589, 0.3255, -0.6315])
    confirm("第一行与书上附带材料相同：0.6957, -1.8061, -1.1589, 0.3255, -0.6315", torch.allclose(small[0], book, atol=1e-4), "种子不是 123，或建表之前用过随机数")
    confirm("各种词表大小下，输出与梯度都相同", same, "权重没有转置")
    expected = 12 * TOKENS * big
    confirm(f"量得的 one-hot 内存，就是 int64 和 float32 两份 (n, V)：12nV = {expected / 1e6:.1f} MB（量得 {memory[big][1] / 1e6:.1f}）", abs(memory[big][1] / expected - 1) < 0.05, "有一份提前放掉了，或多留了一份")


if __name__ == "__main__":
    main()
