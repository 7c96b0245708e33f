"""第 3 章 · 实验　句子长一倍，注意力要多花几倍的时间和内存？

问题：　序列长度 t 翻一倍，注意力的用时和训练时占的内存，各变成几倍？
先猜：　都说注意力是 t²；那 SDPA（里面多半是 FlashAttention）呢，它也是 t² 吗？（先想 10 秒，再运行）
看点：　① 双对数图上，t 的几次方就是几分之几的斜率：1 次方翻一倍变 2 倍，2 次方变 4 倍；每一轮各拟合一次，散得太开就不说是几次方；
        ② 三个 d × d 的投影是 1 次方，而且短句子里它们才是大头：两条线在哪里相交？
        ③ SDPA 留住的内存只有 1 次方：分数一块块地算，从不存下来；④ 告诉它 is_causal=True，右上角那一半它就不算：与不遮的比，省了几成？
动手改：1. --dim 64：投影便宜了，相交的地方移到更短的句子（乘加的次数相等的地方约是 t = 2d）。
        2. --heads 16：手写的内存变成约 4 倍（每个头一张表），SDPA 的几乎不变。
        3. 把 by_hand 里的 torch.softmax 那一行换成 weights = torch.relu(scores)：少存了东西吗？一个字节也没有：乘法的反向传播照样要权重表。（第一条自查会变成 ✗）

运行：
    python ch03/experiments/exp_attention_complexity.py                     # 图片写到 ch03/outputs/
    python ch03/experiments/exp_attention_complexity.py --max-tokens 8192   # 手写的要存约 1.2 GB
    约 25 秒，1.6 GB（2 核 CPU）

形状记号：b 批大小（这里是 1）　t 序列长度　d 嵌入维度　h 头数　k 每个头的维度（k = d / h）
"""

import argparse
import math
import statistics
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"


def by_hand(queries, keys, values):
    """手写的注意力核心，与 MultiHeadAttention 里的那几行相同。

    参数:
        queries (Tensor): (b, h, t, k)
        keys (Tensor): (b, h, t, k)
        values (Tensor): (b, h, t, k)

    返回:
        Tensor: 上下文向量，(b, h, t, k)
    """
    t, k = queries.shape[2:]
    mask = torch.triu(torch.ones(t, t, dtype=torch.bool, device=queries.device), diagonal=1)
    scores = queries @ keys.transpose(2, 3)  # (b, h, t, t)
    scores.masked_fill_(mask, -torch.inf)
    weights = torch.softmax(scores / k**0.5, dim=-1)  # (b, h, t, t)
    return weights @ values  # (b, h, t, k)


def sdpa(queries, keys, values):
    """PyTorch 自带的：同样的计算，一个函数。

    参数:
        queries (Tensor): (b, h, t, k)
        keys (Tensor): (b, h, t, k)
        values (Tensor): (b, h, t, k)

    返回:
        Tensor: 上下文向量，(b, h, t, k)
    """
    return nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)  # (b, h, t, k)


class Parts(nn.Module):
    """把一个多头注意力拆成三份来量：投影、手写的核心、SDPA 的核心。

    参数:
        d (int): 嵌入维度
        h (int): 头数
    """

    def __init__(self, d, h):
        super().__init__()
        self.qkv, self.out_proj, self.h = nn.Linear(d, 3 * d), nn.Linear(d, d), h

    def works(self, t, device):
        """准备好一种长度的输入，每一份一个无参数的函数。

        参数:
            t (int): 序列长度
            device (torch.device): 在哪里算

        返回:
            dict[str, callable]: 名字 → 函数，调用一次算一遍，返回一个张量
        """
        torch.manual_seed(123)
        x = torch.randn(1, t, self.out_proj.in_features).to(device).requires_grad_()  # (b, t, d)
        heads = torch.randn(3, 1, self.h, t, self.out_proj.in_features // self.h).to(device).unbind()  # 三个 (b, h, t, k)
        for each in heads:
            each.requires_grad_()
        return {
            "投影": lambda: self.out_proj(self.qkv(x)[..., : x.shape[-1]]),
            "手写": lambda: by_hand(*heads),
            "SDPA": lambda: sdpa(*heads),
            "SDPA，不遮": lambda: nn.functional.scaled_dot_product_attention(*heads),
        }


def saved_bytes(work):
    """数一数，前向传播为了将来的反向传播，一共留住了多少字节。

    autograd 每留一个张量，就会叫一声 pack；同一块内存可能被留几次，只算一次。参数本来就在内存里，不算。

    参数:
        work (callable): 算一遍前向传播

    返回:
        int: 字节数
    """
    storages = {}

    def pack(tensor):
        if not isinstance(tensor, nn.Parameter) and not isinstance(tensor._base, nn.Parameter):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = work()  # 留着输出，里面的计算图才不会提前释放、地址被别人重用
    return sum(storages.values()) if output is not None else 0


def take_turns(works, rounds, device=None):
    """轮流计时：每一轮把几份各做一遍，电脑忽快忽慢时大家一起快慢，比较才公平。

    在 CPU 上只用一个线程时，看的是这个进程用掉的 CPU 时间：别的程序把核占走的时候，墙上的钟在走，它不走。

    参数:
        works (dict[str, callable]): 名字 → 没有参数的函数
        rounds (int): 几轮；另有一轮热身，不算
        device (torch.device 或 None): 在哪里算；None 表示 CPU

    返回:
        dict[str, list[float]]: 名字 → 每一轮几秒
    """
    on_gpu, times = device is not None and device.type != "cpu", {name: [] for name in works}
    clock = time.perf_counter if on_gpu or torch.get_num_threads() > 1 else time.process_time
    for turn in range(rounds + 1):
        for name, work in works.items():
            start = clock()
            work()
            if on_gpu:  # GPU 上的调用不等算完就返回，要等它算完再看表
                torch.get_device_module(device).synchronize()
            if turn:
                times[name].append(clock() - start)
    return times


def quartiles(values):
    """量了许多次，中间一半落在哪里。只报一个平均，看不出机器忙不忙。

    参数:
        values (list[float]): 每次一个数，至少 2 个

    返回:
        tuple[float, float, float]: 下四分位、中位数、上四分位
    """
    return tuple(statistics.quantiles(values, n=4, method="inclusive"))


def compare(values, reference):
    """甲是乙的几倍；两边中间的一半重叠了，就说分不出。

    参数:
        values (list[float]): 甲，每次一个数
        reference (list[float]): 乙

    返回:
        str: 如 "1.83 倍"，或 "分不出（中位数是 1.02 倍）"
    """
    (low, middle, high), (floor, center, ceiling) = quartiles(values), quartiles(reference)
    ratio = f"{middle / center:.2f} 倍"
    return ratio if high < floor or low > ceiling else f"分不出（中位数是 {ratio}）"


def slope(lengths, values):
    """双对数图上的斜率（最小二乘），也就是"t 的几次方"。

    参数:
        lengths (list[int]): 序列长度
        values (list[float]): 用时或内存

    返回:
        float: 次方
    """
    x, y = [math.log(length) for length in lengths], [math.log(value) for value in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / sum((a - mean_x) ** 2 for a in x)


def power(lengths, runs):
    """每一轮各拟合一次，看次方散得多开；点不在一条直线上，或各轮相差太大，就不说是几次方。

    参数:
        lengths (list[int]): 序列长度
        runs (list[list[float]]): 各个长度的用时，每个长度几轮

    返回:
        tuple[float, str]: 次方的中位数，说不出时是 nan；怎么说
    """
    low, middle, high = quartiles([slope(lengths, each) for each in zip(*runs)])
    medians = [math.log(statistics.median(values)) for values in runs]
    if high - low > 0.4 or statistics.correlation([math.log(t) for t in lengths], medians) ** 2 < 0.97:
        return math.nan, f"说不出几次方（各轮散在 {low:.1f} 到 {high:.1f}，机器正忙，或还没到只有一个次方的长度）"
    return middle, f"t^{middle:.2f}（{low:.2f}–{high:.2f}）：翻一倍变 {2**middle:.1f} 倍"


# region 沿用 setup/device_check.py: pick_device
def pick_device(name="auto"):
    """选择计算设备；点名要的设备不存在就报错，绝不悄悄换成 CPU。（详解见 setup/device_check.py）"""
    available = {"mps": torch.backends.mps.is_available(), "cuda": torch.cuda.is_available(), "cpu": True}
    name = next(device for device, found in available.items() if found) if name == "auto" else name
    if not available.get(name):
        raise ValueError(f"这台机器上没有设备 {name}；运行 python setup/device_check.py 看有哪些、为什么")
    return torch.device(name)


# endregion


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def draw(lengths, times, memory, path):
    """两张双对数图：用时（色带是四分位）、留住的内存。

    参数:
        lengths (list[int]): 序列长度
        times (dict[str, list]): 名字 → 各个长度的用时（秒），每个长度几轮
        memory (dict[str, list[int]]): 名字 → 各个长度的字节数
        path (Path): 图片写到哪里
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4), layout="constrained")
    for name, color, marker in zip(times, ("0.55", "#d9822b", "#2f6fab", "#6a9f4b"), "^os."):
        # 右图里投影与 SDPA 几乎重合，投影画成虚线、放在最上面，两条都看得见
        style = {"linestyle": "--", "zorder": 3} if name == "投影" else {}
        low, middle, high = ([quartiles(values)[i] * 1e3 for values in times[name]] for i in range(3))
        left.plot(lengths, middle, color=color, marker=marker, markersize=5, label=name, **style)
        left.fill_between(lengths, low, high, color=color, alpha=0.25)
        if name in memory:
            right.plot(lengths, [value / 2**20 for value in memory[name]], color=color, marker=marker, markersize=5, label=name, **style)
    for axis, title in ((left, "前向传播的用时（毫秒）"), (right, "训练时留住的内存（MB）")):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(lengths, lengths)
        axis.set_xlabel("序列长度 t")
        axis.set_title(title)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    """量三份的用时和内存，拟合次方，找出投影与核心相交的长度。"""
    parser = argparse.ArgumentParser(description="实验　注意力的时间和内存随序列长度怎样变")
    parser.add_argument("--dim", type=int, default=256, help="嵌入维度（默认：256）")
    parser.add_argument("--heads", type=int, default=4, help="头数，要能整除嵌入维度（默认：4）")
    parser.add_argument("--max-tokens", type=int, default=4096, help="最长的序列，从它往下每次减半，共 7 个（默认：4096）")
    parser.add_argument("--device", default="auto", help="auto、mps、cuda 或 cpu（默认：auto）")
    parser.add_argument("--quick", action="store_true", help="最长只到 1024，20 秒以内跑完")
    args = parser.parse_args()
    longest = min(1024, args.max_tokens) if args.quick else args.max_tokens
    if args.dim < 1 or args.heads < 1:
        parser.error("--dim 和 --heads 至少是 1")
    if args.dim % args.heads != 0:
        parser.error(f"--dim {args.dim} 不能被 --heads {args.heads} 整除，无法平均分给每个头")
    if not 256 <= longest <= 65536:
        parser.error(f"--max-tokens 应在 256 到 65536 之间，不能是 {args.max_tokens}")
    try:
        device = pick_device(args.device)
    except ValueError as error:
        parser.error(str(error))
    d, h, lengths = args.dim, args.heads, [longest >> i for i in reversed(range(7))]
    print(f"d = {d}，{h} 个头，每个头 {d // h} 维，在 {device} 上；t = {lengths[0]} … {lengths[-1]}")
    print(f"最长时，手写的权重表是 ({h}, {longest}, {longest})，{h * longest**2 * 4 / 2**20:,.0f} MB\n")

    torch.set_num_threads(1)  # 小矩阵时几个线程互相等，量出来的是等待
    torch.manual_seed(123)
    parts = Parts(d, h).to(device)
    works = {(name, t): work for t in lengths for name, work in parts.works(t, device).items()}
    names = list(dict.fromkeys(name for name, _ in works))
    memory = {name: [saved_bytes(works[name, t]) for t in lengths] for name in names[:3]}
    with torch.no_grad():
        turns = take_turns(works, 5 if args.quick else 9, device)
    times = {name: [turns[name, t] for t in lengths] for name in names}
    print(f"用时（毫秒，{len(times['手写'][0])} 轮轮流量的中位数，括号里是四分位）和训练时留住的内存（MB）")
    for i, t in enumerate(lengths):
        print(f"  t = {t:4}", end="")
        for name in names:
            low, middle, high = (value * 1e3 for value in quartiles(times[name][i]))
            print(f"　{name} {middle:.2f}（{low:.2f}–{high:.2f}）" + (f" {memory[name][i] / 2**20:.1f} MB" if name in memory else ""), end="")
        print()
    path = OUTPUTS / "attention_complexity.png"
    draw(lengths, times, memory, path)
    print(f"图已写到 {path}")

    print("\n所以：拟合出的次方（只用最长的三个点：短的时候，用时里调用函数的零头占得多，内存里 Q、K、V 占得多）")
    of_memory = {name: slope(lengths[-3:], values[-3:]) for name, values in memory.items()}
    for name in names:
        grown = f"；内存 t^{of_memory[name]:.2f}：翻一倍变 {2 ** of_memory[name]:.1f} 倍" if name in of_memory else ""
        print(f"  {name}　用时 {power(lengths[-3:], times[name][-3:])[1]}{grown}")
    for name in ("手写", "SDPA"):
        crossed = [t for t, core, linear in zip(lengths, times[name], times["投影"]) if quartiles(core)[0] > quartiles(linear)[2]]
        note = f"（只数乘加应在 2d = {2 * d} 附近；softmax、填掩码也要读写整张表）" if name == "手写" else ""
        print((f"  {name}的核心明确比投影慢，从 t = {crossed[0]} 开始" if crossed else f"  {name}的核心在这些长度上没有明确比投影慢") + note)
    print(f"  t = {longest}：SDPA 的用时是手写的 {compare(times['SDPA'][-1], times['手写'][-1])}，留住的内存是手写的 {memory['SDPA'][-1] / memory['手写'][-1]:.1%}；")
    print(f"  　　　　　因果的 SDPA 是不遮的 {compare(times['SDPA'][-1], times['SDPA，不遮'][-1])}：一半的分数不算，最多省一半。")

    print("\n这个数字对吗？")
    works = parts.works(256, device)
    with torch.no_grad():
        error = (works["手写"]() - works["SDPA"]()).abs().max().item()
    tolerance = 1e-4 if device.type == "cpu" else 1e-2
    confirm(f"手写的与 SDPA 的结果相同（最大误差 {error:.0e}）", error < tolerance, "掩码方向反了，或忘了除以 √k")
    # 手写的要留：Q、K、V 各 t·d 个数，权重表 h·t² 个数（每个 4 字节），掩码 t² 个布尔（每个 1 字节）。
    expected = 4 * (3 * longest * d + h * longest**2) + longest**2
    confirm(f"手写的内存与算出来的相同：4(3td + ht²) + t² = {expected:,} 字节（量得 {memory['手写'][-1]:,}）", memory["手写"][-1] == expected, "多留了一份 t × t 的表")
    if device.type == "cpu":  # 别的设备上 SDPA 可能挑了不省内存的实现
        confirm(f"SDPA 的内存是 1 次方（拟合出 {of_memory['SDPA']:.2f}）", abs(of_memory["SDPA"] - 1) < 0.1, "它没有用 flash，把 t × t 的表写了出来")


if __name__ == "__main__":
    main()
