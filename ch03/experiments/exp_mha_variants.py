"""第 3 章 · 实验　同一个多头注意力，换几种写法，谁最快？

问题：　数学上一模一样的多头注意力，写法不同，前向传播、前向 + 反向传播的用时能差几倍？
先猜：　把 Q、K、V 三个矩阵合成一个大矩阵，会快多少？交给 PyTorch 的一个函数（SDPA）呢？（先想 10 秒，再运行）
看点：　① 先证明再比较：同样的权重，每种写法的输出、对输入的梯度都相同；② 几轮的四分位重叠，就说分不出；哪几种明确地快，它们的「核心」是什么？
        ③ 「核心」一栏是这次真正调用的底层函数：在 CPU 上，自己传掩码并不会像在 CUDA 上那样关掉 flash。
动手改：1. --tokens 256 --batch 4：词元总数不变，t × t 的表小了，SDPA 的好处变小。
        2. --tokens 256，--heads 分别取 1 和 48：头多了，t × t 的表就有 48 张，手写的慢得多，SDPA 只慢一点。
        3. 把 MultiHeadAttentionCombinedQKV 里的 permute(2, 0, 3, 1, 4) 改成 permute(2, 0, 1, 3, 4)：没换 t 和 h，成了头与头互相看。
           不报错，输出的形状也对，只有自查变成 ✗。

运行：
    python ch03/experiments/exp_mha_variants.py                # 图片写到 ch03/outputs/
    python ch03/experiments/exp_mha_variants.py --batch 8      # 与原书的规模相同：(8, 1024, 768)，12 个头
    python ch03/experiments/exp_mha_variants.py --compile      # 再加上 torch.compile 编译过的（要 C++ 编译器，多等一两分钟）
    约 30 秒，0.7 GB（2 核 CPU）

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　k 每个头的维度（k = d / h）
"""

import argparse
import re
import statistics
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from torch.utils._python_dispatch import TorchDispatchMode

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"


# region 沿用 ch03/main: CausalAttention, MultiHeadAttentionWrapper, MultiHeadAttention
class CausalAttention(nn.Module):
    """一个头的因果自注意力：SelfAttention_v2 加上批、因果掩码和 dropout。（详解见 ch03/main/example_03_causal_attention.py）"""

    def __init__(self, d_in, d_out, context_length, dropout, qkv_bias=False):
        super().__init__()
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("mask", torch.triu(torch.ones(context_length, context_length, dtype=torch.bool), diagonal=1))

    def forward(self, x):
        b, t, _ = x.shape
        queries = self.W_query(x)  # (b, t, d_out)
        keys = self.W_key(x)  # (b, t, d_out)
        values = self.W_value(x)  # (b, t, d_out)
        scores = queries @ keys.transpose(1, 2)  # (b, t, t)
        scores.masked_fill_(self.mask[:t, :t], -torch.inf)
        weights = torch.softmax(scores / keys.shape[-1] ** 0.5, dim=-1)  # (b, t, t)
        weights = self.dropout(weights)
        return weights @ values  # (b, t, d_out)


class MultiHeadAttentionWrapper(nn.Module):
    """把 h 个单头因果注意力并排放，输出左右拼接起来。（详解见 ch03/main/example_04_multihead_wrapper.py）"""

    def __init__(self, d_in, d_out, context_length, dropout, num_heads, qkv_bias=False):
        super().__init__()
        self.heads = nn.ModuleList([CausalAttention(d_in, d_out, context_length, dropout, qkv_bias) for _ in range(num_heads)])

    def forward(self, x):
        return torch.cat([head(x) for head in self.heads], dim=-1)  # (b, t, h × d_out)


class MultiHeadAttention(nn.Module):
    """带因果掩码的多头自注意力：h 个头并行计算，再拼接、混合。（详解见 ch03/main/example_05_multihead_attention.py）"""

    def __init__(self, d_in, d_out, context_length, dropout, num_heads, qkv_bias=False):
        super().__init__()
        if d_out % num_heads != 0:
            raise ValueError(f"d_out={d_out} 不能被 num_heads={num_heads} 整除，无法平均分给每个头")
        self.d_out = d_out
        self.num_heads = num_heads
        self.head_dim = d_out // num_heads
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.out_proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("mask", torch.triu(torch.ones(context_length, context_length, dtype=torch.bool), diagonal=1))

    def forward(self, x):
        b, t, _ = x.shape
        queries = self.W_query(x)  # (b, t, d_out)
        keys = self.W_key(x)  # (b, t, d_out)
        values = self.W_value(x)  # (b, t, d_out)
        queries = queries.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        keys = keys.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        values = values.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        scores = queries @ keys.transpose(2, 3)  # (b, h, t, t)
        scores.masked_fill_(self.mask[:t, :t], -torch.inf)
        weights = torch.softmax(scores / self.head_dim**0.5, dim=-1)  # (b, h, t, t)
        weights = self.dropout(weights)
        context = (weights @ values).transpose(1, 2)  # (b, t, h, k)
        context = context.contiguous().view(b, t, self.d_out)  # (b, t, d_out)
        return self.out_proj(context)


# endregion


class Ch03_MHA_Wrapper(MultiHeadAttentionWrapper):
    """几个单头并排放，再接一个 out_proj，才与别的写法做同样多的事。

    参数:
        d_in (int): 输入嵌入维度
        d_out (int): 每一个头的输出维度，总的是 num_heads × d_out
        context_length (int): 支持的最长序列
        dropout (float): 注意力权重的丢弃概率
        num_heads (int): 头数
        qkv_bias (bool): 各投影是否带偏置

    形状:
        输入 (b, t, d_in) → 输出 (b, t, num_heads × d_out)

    出处: 原书附加材料 02_bonus_efficient-multihead-attention（下同）
    """

    def __init__(self, d_in, d_out, context_length, dropout, num_heads, qkv_bias=False):
        super().__init__(d_in, d_out, context_length, dropout, num_heads, qkv_bias)
        self.out_proj = nn.Linear(d_out * num_heads, d_out * num_heads)

    def forward(self, x):
        """前向传播。

        参数:
            x (Tensor): (b, t, d_in)

        返回:
            Tensor: (b, t, h × d_out)
        """
        return self.out_proj(super().forward(x))


Ch03_MHA = MultiHeadAttention  # 原书附加材料里的名字；就是 3.6.2 节的类，一个字没改


class MultiHeadAttentionCombinedQKV(nn.Module):
    """三个投影合成一个 (d_in, 3d) 的大矩阵，一次乘完再切开；后面与 MultiHeadAttention 相同。

    参数:
        d_in (int): 输入嵌入维度
        d_out (int): 输出维度
        num_heads (int): 头数，必须能整除 d_out
        context_length (int): 支持的最长序列
        dropout (float): 注意力权重的丢弃概率
        qkv_bias (bool): 投影是否带偏置

    形状:
        输入 (b, t, d_in) → 输出 (b, t, d_out)

    异常:
        ValueError: 头数不能整除 d_out
    """

    def __init__(self, d_in, d_out, num_heads, context_length, dropout=0.0, qkv_bias=False):
        super().__init__()
        if d_out % num_heads != 0:
            raise ValueError(f"d_out={d_out} 不能被 num_heads={num_heads} 整除，无法平均分给每个头")
        self.num_heads = num_heads
        self.head_dim = d_out // num_heads
        self.qkv = nn.Linear(d_in, 3 * d_out, bias=qkv_bias)
        self.proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("mask", torch.triu(torch.ones(context_length, context_length, dtype=torch.bool), diagonal=1))

    def attend(self, queries, keys, values):
        """注意力的核心：三个张量进，一个张量出。下面两个子类只换这一步。

        参数:
            queries (Tensor): (b, h, t, k)
            keys (Tensor): (b, h, t, k)
            values (Tensor): (b, h, t, k)

        返回:
            Tensor: 上下文向量，(b, h, t, k)
        """
        t = queries.shape[2]
        scores = queries @ keys.transpose(2, 3)  # (b, h, t, t)
        scores.masked_fill_(self.mask[:t, :t], -torch.inf)
        weights = torch.softmax(scores / self.head_dim**0.5, dim=-1)  # (b, h, t, t)
        return self.dropout(weights) @ values  # (b, h, t, k)

    def forward(self, x):
        """前向传播：一次投影 → 切成 Q、K、V → 注意力 → 拼回去。

        参数:
            x (Tensor): (b, t, d_in)

        返回:
            Tensor: (b, t, d_out)
        """
        b, t, _ = x.shape
        # 大矩阵的 3d 行依次是全部 Q、全部 K、全部 V，所以先拆出 3，再拆头；次序反了，形状照样对，内容全错。
        qkv = self.qkv(x).view(b, t, 3, self.num_heads, self.head_dim)  # (b, t, 3, h, k)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)  # (b, h, t, k)　permute 之后第 0 维是 3，正好拆给三个名字
        context = self.attend(queries, keys, values).transpose(1, 2)  # (b, t, h, k)
        return self.proj(context.reshape(b, t, -1))  # (b, t, d_out)


class MHAPyTorchScaledDotProduct(MultiHeadAttentionCombinedQKV):
    """核心交给 PyTorch 的 scaled_dot_product_attention（SDPA），用 is_causal=True 说明要因果掩码。

    它在各设备上挑最快的实现，多半是 FlashAttention：把 t × t 的表切成小块，算完一块扔一块；知道右上角全被遮住，那一半不算。
    """

    def attend(self, queries, keys, values):
        """注意力的核心，一个函数。

        参数:
            queries (Tensor): (b, h, t, k)
            keys (Tensor): (b, h, t, k)
            values (Tensor): (b, h, t, k)

        返回:
            Tensor: 上下文向量，(b, h, t, k)
        """
        p = self.dropout.p if self.training else 0.0  # SDPA 是函数，不知道自己在训练还是评估，要我们告诉它
        return nn.functional.scaled_dot_product_attention(queries, keys, values, dropout_p=p, is_causal=True)  # (b, h, t, k)


class MHAPyTorchSDPAWithoutFlash(MultiHeadAttentionCombinedQKV):
    """也用 SDPA，但自己传掩码。原书用这个办法关掉 FlashAttention；CUDA 上确实如此，CPU 上不是，看「核心」一栏。"""

    def attend(self, queries, keys, values):
        """注意力的核心，自己传掩码。

        参数:
            queries (Tensor): (b, h, t, k)
            keys (Tensor): (b, h, t, k)
            values (Tensor): (b, h, t, k)

        返回:
            Tensor: 上下文向量，(b, h, t, k)
        """
        t, p = queries.shape[2], self.dropout.p if self.training else 0.0
        # SDPA 的布尔掩码，True 是"可以看"，与本章的"要遮住"正好相反，所以取反（~）。
        return nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=~self.mask[:t, :t], dropout_p=p)  # (b, h, t, k)


class MHAEinsum(MultiHeadAttention):
    """每次乘法都写成爱因斯坦求和（einsum）：字母就是维度，式子里写明谁和谁相乘、对谁求和，不用记 transpose。"""

    def forward(self, x):
        """前向传播。

        参数:
            x (Tensor): (b, t, d_in)

        返回:
            Tensor: (b, t, d_out)
        """
        t = x.shape[1]
        split = {"h": self.num_heads, "k": self.head_dim}
        # weight 是 (d_out, d_in)，拆成 (h, k, d_in)：投影和分头一步完成。结果里没有 d，就是对 d 求和。
        heads = [layer.weight.unflatten(0, tuple(split.values())) for layer in (self.W_query, self.W_key, self.W_value)]  # 各 (h, k, d_in)
        queries, keys, values = (torch.einsum("btd,hkd->bhtk", x, weight) for weight in heads)  # 各 (b, h, t, k)
        scores = torch.einsum("bhik,bhjk->bhij", queries, keys)  # (b, h, t, t)　i 看 j
        scores.masked_fill_(self.mask[:t, :t], -torch.inf)
        weights = self.dropout(torch.softmax(scores / self.head_dim**0.5, dim=-1))  # (b, h, t, t)
        context = torch.einsum("bhij,bhjk->bihk", weights, values)  # (b, t, h, k)　顺手把 h 换到了后面
        return self.out_proj(context.flatten(2))  # (b, t, d_out)


class MHAPyTorchClass(nn.Module):
    """PyTorch 自带的类 nn.MultiheadAttention。

    原书在它后面还接了一个 proj，可它自己已有 out_proj，多乘了一次；这里不接，比较才公平。

    参数:
        d_in (int): 输入嵌入维度，必须等于 d_out
        d_out (int): 输出维度
        num_heads (int): 头数
        context_length (int): 支持的最长序列
        dropout (float): 注意力权重的丢弃概率
        need_weights (bool): 要不要连注意力权重也一起返回；默认要，于是 t × t 的表非写出来不可

    形状:
        输入 (b, t, d_in) → 输出 (b, t, d_out)
    """

    def __init__(self, d_in, d_out, num_heads, context_length, dropout=0.0, need_weights=True):
        super().__init__()
        self.need_weights = need_weights
        self.multihead_attn = nn.MultiheadAttention(d_out, num_heads, dropout=dropout, batch_first=True)
        self.register_buffer("mask", torch.triu(torch.ones(context_length, context_length, dtype=torch.bool), diagonal=1))

    def forward(self, x):
        """前向传播。

        参数:
            x (Tensor): (b, t, d_in)

        返回:
            Tensor: (b, t, d_out)
        """
        t = x.shape[1]
        context, _ = self.multihead_attn(x, x, x, attn_mask=self.mask[:t, :t], need_weights=self.need_weights)
        return context


def build(d, h, t):
    """每种写法各建一个，装进同样的权重。

    参数:
        d (int): 嵌入维度
        h (int): 头数
        t (int): 最长序列

    返回:
        dict[str, nn.Module]: 名字 → 模块，第一个之外都应与 MultiHeadAttention 相同

    异常:
        ValueError: h 不能整除 d
    """
    source = MultiHeadAttention(d, d, t, 0.0, h)
    wrapper = Ch03_MHA_Wrapper(d, d // h, t, 0.0, h)
    einsum = MHAEinsum(d, d, t, 0.0, h)
    combined = [kind(d, d, h, t) for kind in (MultiHeadAttentionCombinedQKV, MHAPyTorchScaledDotProduct, MHAPyTorchSDPAWithoutFlash)]
    torch_classes = [MHAPyTorchClass(d, d, h, t, need_weights=need) for need in (True, False)]

    with torch.no_grad():
        source.out_proj.bias.normal_(std=0.1)  # 让偏置也有用，漏拷就看得出来
        big = torch.cat([source.W_query.weight, source.W_key.weight, source.W_value.weight])  # (3d, d)
        einsum.load_state_dict(source.state_dict())  # 子类，名字都一样
        for i, head in enumerate(wrapper.heads):
            rows = slice(i * d // h, (i + 1) * d // h)  # 第 i 个头在大矩阵里的那几行
            for name in ("W_query", "W_key", "W_value"):
                getattr(head, name).weight.copy_(getattr(source, name).weight[rows])
        for each in combined:
            each.qkv.weight.copy_(big)
        for each in torch_classes:
            each.multihead_attn.in_proj_weight.copy_(big)
            each.multihead_attn.in_proj_bias.zero_()  # 它的 bias 开关管着两处；我们要 out_proj 的，不要 qkv 的，所以清零
        for last in (wrapper.out_proj, *(each.proj for each in combined), *(each.multihead_attn.out_proj for each in torch_classes)):
            last.load_state_dict(source.out_proj.state_dict())
    modules = [wrapper, source, combined[0], einsum, *combined[1:], torch_classes[0]]
    return {type(module).__name__: module for module in modules} | {"MHAPyTorchClass, need_weights=False": torch_classes[1]}


def forward_backward(module, x):
    """一次前向 + 反向传播。

    参数:
        module (nn.Module): 某一种写法
        x (Tensor): 输入，(b, t, d)

    返回:
        tuple[Tensor, Tensor]: 输出和对输入的梯度，都是 (b, t, d)
    """
    module.zero_grad()
    x = x.detach().requires_grad_()
    output = module(x)
    output.pow(2).mean().backward()  # 随便定一个损失；平方使每个输出的梯度都不同，错了不会碰巧抵消
    return output.detach(), x.grad


class Watch(TorchDispatchMode):
    """旁观者：在 with 里面，PyTorch 每调用一个底层函数，就记下它的名字。"""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """记下名字，原样调用。

        参数:
            func (callable): 底层函数
            types (tuple): 参数里有哪些张量类型
            args (tuple): 位置参数
            kwargs (dict 或 None): 关键字参数

        返回:
            底层函数的结果
        """
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def core(module, x):
    """看看注意力的核心落到了哪个底层函数上。

    参数:
        module (nn.Module): 某一种写法
        x (Tensor): 输入，(b, t, d)

    返回:
        str: flash、math 等，没有用 SDPA 则为 "矩阵乘法"
    """
    with Watch() as watch:
        module(x)
    kinds = re.findall(r"_scaled_dot_product_(?:fused_)?(?:attention_)?([a-z]+)", " ".join(sorted(watch.names)))
    return kinds[0] if kinds else "矩阵乘法"


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


def draw(times, title, path):
    """每种写法一行：点是一轮，粗线是四分位，竖线是中位数；左格前向，右格前向 + 反向。

    参数:
        times (dict): "前向"、"前向 + 反向" → 名字 → 每一轮几毫秒
        title (str): 规模
        path (Path): 图片写到哪里
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 0.4 * len(times["前向"]) + 1.4), sharey=True, layout="constrained")
    for axis, (label, rows) in zip(axes, times.items()):
        for row, values in enumerate(rows.values()):
            low, middle, high = quartiles(values)
            axis.scatter(values, [row] * len(values), s=8, color="0.6")
            axis.plot([low, high], [row, row], linewidth=7, alpha=0.5, color="#2f6fab", solid_capstyle="butt")
            axis.plot(middle, row, "k|", markersize=12)
        axis.set(xlim=(0, None), title=label, xlabel="毫秒，越短越快")
    axes[0].set_yticks(range(len(times["前向"])), times["前向"])
    axes[0].invert_yaxis()
    figure.suptitle(title)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    """先证明各种写法算的是同一件事，再轮流计时、画图。"""
    parser = argparse.ArgumentParser(description="实验　多头注意力的各种写法")
    numbers = {"batch": ("批大小；原书是 8", 1), "tokens": ("序列长度", 1024), "dim": ("嵌入维度", 768), "heads": ("头数，要能整除嵌入维度", 12), "rounds": ("计时几轮", 7)}
    for name, (text, value) in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{text}（默认：{value}）")
    parser.add_argument("--compile", action="store_true", help="再加上 torch.compile 编译过的两种")
    parser.add_argument("--device", default="auto", help="auto、mps、cuda 或 cpu（默认：auto）")
    parser.add_argument("--quick", action="store_true", help="小一点的输入，20 秒以内跑完")
    args = parser.parse_args()
    for name in numbers:
        if getattr(args, name) < (2 if name == "rounds" else 1):
            parser.error(f"--{name} 至少是 {2 if name == 'rounds' else 1}，不能是 {getattr(args, name)}")
    b, t, d, h, rounds = (1, min(args.tokens, 256), 192, 6, 5) if args.quick else (args.batch, args.tokens, args.dim, args.heads, args.rounds)
    try:
        device = pick_device(args.device)
        torch.manual_seed(123)
        print(f"输入 ({b}, {t}, {d})，{h} 个头，每个头 {d // h} 维，在 {device} 上")
        modules = {name: module.to(device) for name, module in build(d, h, t).items()}
    except ValueError as error:
        parser.error(str(error))
    torch.set_num_threads(1)  # 只用一个线程，take_turns 就能看 CPU 时间，不怕别的程序打扰
    x = torch.randn(b, t, d).to(device)  # (b, t, d)

    for name in ("MultiHeadAttention", "MHAPyTorchScaledDotProduct") if args.compile else ():
        start = time.perf_counter()
        try:
            compiled = torch.compile(modules[name])
            forward_backward(compiled, x)
            with torch.no_grad():  # 不求梯度时是另一张计算图，也要先编译好
                compiled(x)
        except Exception as error:  # 没有编译器、Python 版本不支持……原因各种各样
            print(f"torch.compile 在这台机器上用不了，跳过（{type(error).__name__}）")
            break
        modules[f"{name}, compiled"] = compiled
        print(f"编译 {name} 用了 {time.perf_counter() - start:.0f} 秒")

    # ① 证明：输出、对输入的梯度，都与 MultiHeadAttention 比。
    reference, reference_grad = forward_backward(modules["MultiHeadAttention"], x)
    errors, kernels = {}, {}
    for name, module in modules.items():
        output, grad = forward_backward(module, x)
        errors[name] = max(((a - b).abs().max() / b.abs().max()).item() for a, b in ((output, reference), (grad, reference_grad)))
        kernels[name] = "编译过" if name.endswith("compiled") else core(module, x)

    def forward(module):  # ② 计时
        with torch.no_grad():
            module(x)

    works = {("前向", name): lambda module=module: forward(module) for name, module in modules.items()}
    works |= {("前向 + 反向", name): lambda module=module: forward_backward(module, x) for name, module in modules.items()}
    turns = take_turns(works, rounds, device)
    times = {label: {name: [seconds * 1e3 for seconds in turns[label, name]] for name in modules} for label in ("前向", "前向 + 反向")}
    print(f"\n前向、前向 + 反向各几毫秒（{rounds} 轮轮流量的中位数，括号里是四分位），相对误差，写法与核心")
    for name in modules:
        cells = [f"{middle:.1f}（{low:.1f}–{high:.1f}）" for low, middle, high in (quartiles(rows[name]) for rows in times.values())]
        print(f"  {cells[0]:20}{cells[1]:22}{errors[name]:.0e}　{name}：{kernels[name]}")
    path = OUTPUTS / "mha_variants.png"
    draw(times, f"({b}, {t}, {d}), h = {h}, {device}", path)
    print(f"图已写到 {path}")

    print("\n所以：用时是 MultiHeadAttention 的几倍（小于 1 就是更快）")
    for label, rows in times.items():
        fastest = min(rows, key=lambda name: statistics.median(rows[name]))
        tied = [name for name in rows if name != fastest and compare(rows[name], rows[fastest]).startswith("分不出")]
        print(f"  {label}最快的是 {fastest}，{compare(rows[fastest], rows['MultiHeadAttention'])}" + (f"；与它分不出的有 {'、'.join(tied)}" if tied else ""))
        print("".join(f"    {name}　{compare(rows[name], rows['MultiHeadAttention'])}\n" for name in ("Ch03_MHA_Wrapper", "MultiHeadAttentionCombinedQKV")), end="")

    print("\n这个数字对吗？")
    worst = max(errors, key=errors.get)
    tolerance = 1e-4 if device.type == "cpu" else 1e-2  # GPU 的矩阵乘法可能用精度较低的 TF32
    confirm(f"各种写法的输出和梯度都相同（差得最多的是 {worst}，{errors[worst]:.0e}，应小于 {tolerance:.0e}）", errors[worst] < tolerance, "分头的次序不对，或 SDPA 的掩码忘了取反")
    changed = x.clone()
    changed[:, -1] = 0  # 抹掉最后一个词元；前面的看不到它，输出就不该变
    with torch.no_grad():
        leak = max((module(changed)[:, :-1] - module(x)[:, :-1]).abs().max().item() for module in modules.values())
    confirm(f"抹掉最后一个词元，前面的输出都不变（最大变化 {leak:.0e}）", leak < tolerance, "有一种写法漏了因果掩码")
    counts = {sum(p.numel() for p in module.parameters()) - (3 * d if "multihead_attn" in dict(module.named_children()) else 0) for module in modules.values()}
    confirm(f"参数都是 4d² + d = {4 * d * d + d:,} 个（nn.MultiheadAttention 另有 3d 个清成 0 的偏置，不计）", counts == {4 * d * d + d}, "多接了一层，比如原书的 proj")


if __name__ == "__main__":
    main()
