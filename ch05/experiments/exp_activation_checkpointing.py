"""第 5 章 · 实验　激活值重算：不存中间结果，用到时再算一遍

问题：　反向传播要用前向的中间结果（激活值）。只存每段的输入，用到时重算（activation checkpointing），内存省几成，时间多几成？
先猜：　都说前向算一份的时间，反向算两份；重算就是多做一遍前向，一共多几成？每 k 块存一次，k 取几最省？（先想 10 秒，再运行）
看点：　① 左图：不重算，内存随层数直线上涨；重算，几乎是平的；② 中图：教科书说 k 取 √L（L 是层数），这里却是 k = 1 最省：
        一块的激活值是它的输入的几十倍，多重算一块，比多存几十个输入还贵；③ 梯度逐位相同，有 dropout 也是：重算前，随机数要拨回去。
动手改：1. 把 Recompute 里的 torch.set_rng_state(ctx.rng) 去掉：重算时 dropout 抽到的不同，梯度就错了，自查的第一条变成 ✗；没有一处报错。
        2. 把 torch.set_rng_state(now) 去掉：这一步的梯度还是对的，可是后面的随机数变了，第一条变成 ✗：加不加重算，练出来的就不是同一个模型。
        3. 把 BASE 里的 "context_length": 256 改成 64：注意力的 t × t 小了，一块是输入的几倍也跟着小（58 倍变成 40 倍）。

运行：
    python ch05/experiments/exp_activation_checkpointing.py               # 图片写到 ch05/outputs/
    python ch05/experiments/exp_activation_checkpointing.py --quick
    约 140 秒，1.2 GB（2 核 CPU）

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　k 每个头的维度　V 词表大小
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from functools import reduce
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from torch.utils.checkpoint import checkpoint  # 只用来核对

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"

# 改这里
BASE = {"vocab_size": 512, "context_length": 256, "emb_dim": 192, "n_heads": 6, "drop_rate": 0.1, "qkv_bias": False}  # 词表小：只看块里的内存
BATCH = 4
LAYERS = [4, 8, 16]  # 内存随层数怎么变
EVERY = [0, 1, 2, 4, 8]  # 每几块存一次；0 是不重算
ROUNDS = 5  # 计时轮流量几遍；内存量两遍


# region 沿用 ch03/main: MultiHeadAttention
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


# region 沿用 ch04/main: LayerNorm, GELU, FeedForward, TransformerBlock, GPTModel
class LayerNorm(nn.Module):
    """层归一化（layer normalization）：把每个词元的 d 个数调成均值 0、方差 1，再学着缩放和平移。（详解见 ch04/main/example_02_layernorm.py）"""

    def __init__(self, emb_dim):
        super().__init__()
        self.eps = 1e-5
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x):
        mean = x.mean(dim=-1, keepdim=True)  # (…, 1)
        var = x.var(dim=-1, keepdim=True, unbiased=False)  # (…, 1)
        norm_x = (x - mean) / torch.sqrt(var + self.eps)  # (…, d)
        return self.scale * norm_x + self.shift


class GELU(nn.Module):
    """GELU 激活函数：像 ReLU，但拐弯是圆滑的。（详解见 ch04/main/example_03_feedforward.py）"""

    def forward(self, x):
        return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


class FeedForward(nn.Module):
    """前馈网络（feed forward）：先升到 4 倍维度，过激活函数，再降回来。（详解见 ch04/main/example_03_feedforward.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(cfg["emb_dim"], 4 * cfg["emb_dim"]),
            GELU(),
            nn.Linear(4 * cfg["emb_dim"], cfg["emb_dim"]),
        )

    def forward(self, x):
        return self.layers(x)


class TransformerBlock(nn.Module):
    """Transformer 块：注意力 + 前馈网络，各自先归一化、再用残差连接加回去。（详解见 ch04/main/example_05_transformer_block.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.att = MultiHeadAttention(
            d_in=cfg["emb_dim"],
            d_out=cfg["emb_dim"],
            context_length=cfg["context_length"],
            num_heads=cfg["n_heads"],
            dropout=cfg["drop_rate"],
            qkv_bias=cfg["qkv_bias"],
        )
        self.ff = FeedForward(cfg)
        self.norm1 = LayerNorm(cfg["emb_dim"])
        self.norm2 = LayerNorm(cfg["emb_dim"])
        self.drop_shortcut = nn.Dropout(cfg["drop_rate"])

    def forward(self, x):
        shortcut = x
        x = self.norm1(x)
        x = self.att(x)  # (b, t, d)
        x = self.drop_shortcut(x)
        x = x + shortcut
        shortcut = x
        x = self.norm2(x)
        x = self.ff(x)  # (b, t, d)
        x = self.drop_shortcut(x)
        return x + shortcut


class GPTModel(nn.Module):
    """GPT：词嵌入 + 位置嵌入 → 一摞 Transformer 块 → 归一化 → 对每个位置给出整个词表的分数。（详解见 ch04/main/example_06_gpt_model.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.Sequential(*[TransformerBlock(cfg) for _ in range(cfg["n_layers"])])
        self.final_norm = LayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)

    def forward(self, in_idx):
        t = in_idx.shape[1]
        if t > self.pos_emb.num_embeddings:
            raise ValueError(f"输入有 {t} 个词元，超过了模型的上下文长度 {self.pos_emb.num_embeddings}")
        tok_embeds = self.tok_emb(in_idx)  # (b, t, d)
        pos_embeds = self.pos_emb(torch.arange(t, device=in_idx.device))  # (t, d)
        x = tok_embeds + pos_embeds  # (b, t, d)
        x = self.drop_emb(x)
        x = self.trf_blocks(x)  # (b, t, d)
        x = self.final_norm(x)
        return self.out_head(x)  # (b, t, V)


# endregion


# region 沿用 ch05/experiments/exp_gradient_accumulation.py: gradient, peak_memory, fresh
def gradient(model):
    """全部梯度接成一个长向量。（详解见 ch05/experiments/exp_gradient_accumulation.py）"""
    return torch.cat([p.grad.flatten() for p in model.parameters()])  # (n,)


def peak_memory():
    """这个进程到现在为止，内存最多占过多少。（详解见 ch05/experiments/exp_gradient_accumulation.py）"""
    if (status := Path("/proc/self/status")).is_file():
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text(encoding="utf-8"))[1]) / 2**10
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def fresh(*arguments):
    """在新的进程里运行这个脚本：峰值只升不降，同一个进程里量第二次，看到的还是第一次的。（详解见 ch05/experiments/exp_gradient_accumulation.py）"""
    command = [sys.executable, str(Path(__file__).resolve()), *map(str, arguments)]
    kept = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
    clean = {name: value for name, value in os.environ.items() if name not in kept}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=clean | {"PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"})
    if done.returncode != 0:
        raise OSError(f"量内存的进程中途停了（退出码 {done.returncode}），多半是内存不够：关掉别的程序，或加 --quick")
    return json.loads(done.stdout.splitlines()[-1])


# endregion


class Recompute(torch.autograd.Function):
    """前向只留输入，反向时重算。与 torch.utils.checkpoint.checkpoint 做的是同一件事。"""

    @staticmethod
    def forward(ctx, run, x):
        """算出输出，中间结果一概不留。

        参数:
            ctx (Context): 留给反向用的东西放在这里
            run (callable): 一段网络
            x (Tensor): 它的输入，(b, t, d)

        返回:
            Tensor: 输出，(b, t, d)
        """
        ctx.run, ctx.rng = run, torch.get_rng_state()  # dropout 用的随机数，此刻是什么状态
        ctx.save_for_backward(x)
        return run(x)  # (b, t, d)　在 Function 的 forward 里，自动求导本来就不记中间结果

    @staticmethod
    def backward(ctx, grad):
        """重算一遍前向，这次记下中间结果，再反向。

        参数:
            ctx (Context): forward 留下的
            grad (Tensor): 损失对输出的梯度，(b, t, d)

        返回:
            tuple[None, Tensor]: 对 run 的（没有）；对输入的梯度，(b, t, d)
        """
        (x,) = ctx.saved_tensors
        x, now = x.detach().requires_grad_(), torch.get_rng_state()
        torch.set_rng_state(ctx.rng)  # 拨回去：dropout 要丢掉同样的那些数，否则梯度就是另一个网络的
        with torch.enable_grad():
            y = ctx.run(x)  # (b, t, d)
        torch.set_rng_state(now)  # 再拨回来：前面的块重算过了，不能让后面的随机数跟着变
        torch.autograd.backward(y, grad)  # 参数的梯度直接加到它们的 .grad 上
        return None, x.grad


class CheckpointedBlocks(nn.Sequential):
    """一摞 Transformer 块，每 every 块是一段，只存每段的输入。

    继承 nn.Sequential：状态字典里的名字一个不变，训练好的权重照样装。

    参数:
        blocks (Iterable): Transformer 块
        every (int): 每几块一段；0 是不重算

    异常:
        ValueError: every 是负数
    """

    def __init__(self, blocks, every):
        super().__init__(*blocks)
        if every < 0:
            raise ValueError(f"every 是每几块存一次，不能是 {every}")
        self.every = every

    def forward(self, x):
        """一段一段地算：(b, t, d) → (b, t, d)。

        参数:
            x (Tensor): 词嵌入加位置嵌入，(b, t, d)

        返回:
            Tensor: 最后一块的输出，(b, t, d)
        """
        if self.every == 0 or not self.training:  # 评估时没有反向，不必重算
            return super().forward(x)
        for start in range(0, len(self), self.every):
            # x 要带梯度：不带的话，自动求导以为这一段不用反向，里面的参数就没有梯度，也不报错。这里 x 来自词嵌入，带着；冻结了词嵌入就不行。
            x = Recompute.apply(nn.Sequential(*list(self)[start : start + self.every]), x)
        return x


class Box:
    """账本里的一项：自动求导放掉它的时候，把账销掉。

    参数:
        ledger (Ledger): 账本
        tensor (Tensor): 存下的张量，什么形状都行
    """

    def __init__(self, ledger, tensor):
        self.ledger, self.tensor, self.key = ledger, tensor, tensor.untyped_storage().data_ptr()
        ledger.count[self.key] += 1
        if ledger.count[self.key] == 1 and self.key not in ledger.mine:  # 同一块内存存了几次（view、转置共用），只算一次
            ledger.size[self.key] = tensor.untyped_storage().nbytes()
            ledger.live += ledger.size[self.key]
            ledger.peak = max(ledger.peak, ledger.live)

    def __del__(self):
        """放掉了。"""
        self.ledger.count[self.key] -= 1
        if self.ledger.count[self.key] == 0:
            self.ledger.live -= self.ledger.size.pop(self.key, 0)


class Ledger(torch.autograd.graph.saved_tensors_hooks):
    """给自动求导存下的张量记账，精确到字节，每次运行都一样；进程的内存会受分配器影响，这个不会。

    参数:
        model (nn.Module): 模型；它的参数和 buffer 不算，它们本来就在
    """

    def __init__(self, model):
        self.live = self.peak = 0
        self.count, self.size = Counter(), {}
        self.mine = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
        super().__init__(lambda tensor: Box(self, tensor), lambda box: box.tensor)


def build(layers, every, seed=123):
    """一个 layers 层的 GPT，每 every 块存一次，和一批数据。

    参数:
        layers, every (int): 几层；每几块存一次，0 是不重算
        seed (int): 初始权重和数据

    返回:
        tuple[GPTModel, Tensor]: 模型；词元编号，(b, t + 1)
    """
    torch.manual_seed(seed)
    model = GPTModel(BASE | {"n_layers": layers})
    window = torch.randint(BASE["vocab_size"], (BATCH, BASE["context_length"] + 1))  # (b, t + 1)
    model.trf_blocks = CheckpointedBlocks(model.trf_blocks, every)
    return model, window


def one_step(model, window, seed=1):
    """前向加反向，梯度留在 .grad 里。

    参数:
        model (GPTModel): 模型
        window (Tensor): 词元编号，(b, t + 1)
        seed (int): dropout 的随机数

    返回:
        float: 损失
    """
    model.zero_grad()
    torch.manual_seed(seed)
    loss = nn.functional.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
    loss.backward()
    return loss.item()


def saved_bytes(layers, every):
    """走一步，自动求导存下的张量：前向结束时有多少，整个过程最多有多少。

    参数:
        layers, every (int): 几层；每几块存一次

    返回:
        dict: stored、peak（MB）
    """
    model, window = build(layers, every)
    ledger = Ledger(model)
    with ledger:
        torch.manual_seed(1)
        loss = nn.functional.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        stored = ledger.live
        loss.backward()
    return {"stored": stored / 2**20, "peak": ledger.peak / 2**20}


def measure(layers, every):
    """在这个进程里走一步，内存的峰值升了多少。

    参数:
        layers, every (int): 几层；每几块存一次

    返回:
        dict: rise（MB；Windows 上量不了，是 None）
    """
    model, window = build(layers, every)
    for p in model.parameters():  # 梯度先占好：要看的是激活值
        p.grad = torch.zeros_like(p)
    model(window[:1, :8]).sum().backward()  # 热身：第一次要装好数学库，那些内存与层数无关
    before = peak_memory()
    torch.manual_seed(1)
    nn.functional.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten()).backward()
    return {"rise": before and peak_memory() - before}


def timings(layers, rounds):
    """几种 every 轮流走一步，量 CPU 时间：别的程序抢走的时间不算。

    参数:
        layers, rounds (int): 几层；轮几遍

    返回:
        tuple[dict, list]: every → 每遍的时间除以同一遍里不重算的；只做前向的时间，也除以它
    """
    models = {every: build(layers, every) for every in EVERY if every <= layers}
    ratios, forward = {every: [] for every in models}, []
    for number in range(rounds + 1):
        seconds = {}
        for every, pair in models.items():
            began = time.process_time()
            one_step(*pair)
            seconds[every] = time.process_time() - began
        began = time.process_time()
        with torch.no_grad():
            models[0][0](models[0][1][:, :-1])
        alone = time.process_time() - began
        if number > 0:  # 第一遍是热身
            for every in models:
                ratios[every].append(seconds[every] / seconds[0])
            forward.append(alone / seconds[0])
    return ratios, forward


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def draw(rises, exact, by_every, formula, ratios, expected, path):
    """左图：内存随层数；中图：每几块存一次最省；右图：时间。

    参数:
        rises, exact (dict): （几层，every）→ 进程的峰值升了多少（几次）；账本的峰值
        by_every, formula (dict): every → 账本的峰值；公式算的
        ratios, expected (dict, float): every → 时间的比；多一遍前向，该是几倍
        path (Path): 图片写到哪里
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.9), layout="constrained")
    names = {0: "不重算", 1: "每块都重算", 4: "每 4 块一段"}
    layers = sorted({each for each, _ in exact})
    for (every, name), color in zip(names.items(), ["0.3", "tab:blue", "tab:orange"]):
        left.plot(layers, [exact[each, every] for each in layers], ":", color=color, label=f"{name}，账本")
        points = [(each, value) for each in layers for value in rises.get((each, every), []) if value is not None]
        if points:
            left.scatter(*zip(*points), s=18, color=color, label=f"{name}，进程")
    left.set_xticks(layers)
    left.set_xlabel("层数")
    left.set_ylabel("激活值的峰值（MB）")
    left.set_title("内存随层数")
    left.legend(fontsize=8)
    middle.plot(list(by_every), list(by_every.values()), "o", color="tab:blue", label="账本")
    middle.plot(list(formula), list(formula.values()), "--", color="0.5", label="(L/k)·输入 + k·一块")
    middle.set_xticks(list(by_every))
    middle.set_xlabel("每几块存一次（k）")
    middle.set_ylabel("激活值的峰值（MB）")
    middle.set_title(f"k 取几最省（L = {layers[-1]}）")
    middle.legend(fontsize=8)
    right.boxplot(list(ratios.values()), tick_labels=["不重算" if every == 0 else every for every in ratios])
    right.axhline(expected, color="tab:red", linestyle=":", label="多一遍前向，该是这么多")
    right.set_xlabel("每几块存一次（k）")
    right.set_ylabel("一步的 CPU 时间，除以不重算的")
    right.set_title("时间")
    right.legend(fontsize=8)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def quartiles(values):
    """中位数和四分位。

    参数:
        values (list[float]): 至少两个数

    返回:
        tuple[float, float, float]: 下四分位、中位数、上四分位
    """
    return tuple(statistics.quantiles(values, n=4, method="inclusive"))


def run(quick):
    """内存随层数、每几块存一次、时间，画图，自查。

    参数:
        quick (bool): True 时层数少，只量一遍
    """
    layers, rounds = ([2, 4], 2) if quick else (LAYERS, ROUNDS)
    deep = layers[-1]
    print(f"模型　d = {BASE['emb_dim']}，{BASE['n_heads']} 个头，每批 {BATCH} × {BASE['context_length']} 个词元，dropout {BASE['drop_rate']}", flush=True)
    exact = {(each, every): saved_bytes(each, every)["peak"] for each in layers for every in (0, 1, 4)}
    rises = {case: [] for case in exact if not quick or (case[0] == deep and case[1] < 2)}
    loose = fresh("--measure", f"{deep},0")["rise"]
    # glibc 把不太大的张量放在一整块堆里，放掉以后留下空洞，还不回去：进程占的比真正用着的多。让大于 256 KB 的都单独申请、用完就还，才量得准。
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**18)  # 只对下面新开的进程有用；Mac 和 Windows 不用 glibc，没有影响
    for _ in range(1 if quick else 2):  # 轮流量
        for each, every in rises:
            rises[each, every].append(fresh("--measure", f"{each},{every}")["rise"])
    print("① 激活值的峰值（MB）：账本 / 进程的内存升了多少（新的进程，几次）")
    for each in layers:
        cells = []
        for every, name in [(0, "不重算"), (1, "每块都重算"), (4, "每 4 块一段")]:
            process = "、".join("量不了" if rise is None else f"{rise:.0f}" for rise in rises.get((each, every), []))
            cells.append(f"{name} {exact[each, every]:6.1f} / {process or '没有量'}")
        print(f"　{each:2} 层　" + "　".join(cells))
    if loose is not None:
        print(f"　{deep} 层，不重算，分配器照默认的：进程升了 {loose:.0f} MB")

    whole = saved_bytes(deep, 0)
    small = saved_bytes(deep // 2, 0)
    block = (whole["stored"] - small["stored"]) / (deep - deep // 2)  # 一块存多少：两种层数相减，词嵌入、输出层的就抵消了
    entry = BATCH * BASE["context_length"] * BASE["emb_dim"] * 4 / 2**20  # 一段的输入，(b, t, d)
    by_every = {every: saved_bytes(deep, every)["peak"] for every in EVERY if 0 < every <= deep}
    formula = {every: -(-deep // every) * entry + every * block for every in by_every}
    best = min(by_every, key=by_every.get)
    print(f"\n② {deep} 层：一块存 {block:.1f} MB，是它的输入（{entry:.2f} MB）的 {block / entry:.0f} 倍；公式 (L/k)·输入 + k·一块 最小的 k = √(L ÷ {block / entry:.0f}) = {(deep * entry / block) ** 0.5:.1f}")
    print("　" + "　".join(f"k = {every}：{peak:.1f} MB（公式 {formula[every]:.1f}）" for every, peak in by_every.items()) + f"　最省的是 k = {best}")

    torch.set_num_threads(1)
    ratios, forward = timings(min(deep, 8), rounds)
    expected = 1 + quartiles(forward)[1]
    print(f"\n③ {min(deep, 8)} 层走一步的 CPU 时间，除以同一遍里不重算的（{rounds} 遍的四分位）")
    print(f"　只做前向，占一步的 {expected - 1:.2f}（常说的三分之一，只算了矩阵乘法），多一遍前向该是 {expected:.2f}")
    for every, values in ratios.items():
        low, mid, high = quartiles(values)
        print(f"　{'不重算' if every == 0 else f'k = {every}'.ljust(5)}　{mid:.2f}（{low:.2f} 到 {high:.2f}）")
    if quick:
        print("　只量了两遍：看流程，不下结论")
    picture = OUTPUTS / f"activation_checkpointing{'_quick' * quick}.png"
    draw(rises, exact, by_every, formula, ratios, expected, picture)
    print(f"图片已写到 {picture}")

    print("\n这个数字对吗？")
    plain, window = build(4, 0)
    loss = one_step(plain, window)
    wanted, after, same = gradient(plain), torch.get_rng_state(), True
    for every in (1, 2, 3, 4):
        model, _ = build(4, every)
        same = same and one_step(model, window) == loss and torch.equal(gradient(model), wanted) and torch.equal(torch.get_rng_state(), after)
    confirm("损失、梯度、之后的随机数，与不重算的逐位相同（dropout 开着，k = 1 到 4）", same, "重算之前没有把随机数拨回去，或之后没有拨回来")
    model, _ = build(4, 0)
    blocks = list(model.trf_blocks)
    model.trf_blocks.forward = lambda x: reduce(lambda x, block: checkpoint(block, x, use_reentrant=False), blocks, x)
    one_step(model, window)
    confirm("与 torch.utils.checkpoint 的梯度逐位相同", torch.equal(gradient(model), wanted), "重算的不是同一个函数")
    names = list(GPTModel(BASE | {"n_layers": 2}).state_dict()) == list(build(2, 1)[0].state_dict())
    confirm("状态字典里的名字没有变", names, "没有继承 nn.Sequential")
    apart = [rise - exact[case] for case, each in rises.items() for rise in each if rise is not None]
    if sys.platform == "linux":
        confirm(f"进程的内存比账本多 {min(apart):.0f} 到 {max(apart):.0f} MB，不随层数变", max(apart) - min(apart) < 25, "不是 glibc，或漏记了存下的张量")
    near = max(abs(formula[every] / peak - 1) for every, peak in by_every.items())
    confirm(f"账本与公式相差不到 2%（最多 {near:.1%}）", near < 0.02, "存了不止每段的输入，或算重了共用的内存")
    confirm(f"重算之后，{deep} 层的峰值不到不重算的 {2 / deep + 0.15:.0%}（{exact[deep, 1] / exact[deep, 0]:.0%}）", exact[deep, 1] < (2 / deep + 0.15) * exact[deep, 0], "中间结果还是存下了")


def main():
    """激活值重算：内存、时间、梯度。"""
    parser = argparse.ArgumentParser(description="实验　激活值重算，用时间换内存")
    parser.add_argument("--layers", type=int, help="最深几层，4 到 48，要能被 4 整除（默认：16）")
    parser.add_argument("--quick", action="store_true", help="最深 4 层，只量一两遍：看流程，不下结论")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # 给 fresh 用：几层和 every，逗号隔开，只走一步，印出内存
    args = parser.parse_args()
    if args.layers is not None and (not 4 <= args.layers <= 48 or args.layers % 4 != 0):
        parser.error(f"--layers 应在 4 到 48 之间，并且能被 4 整除，不能是 {args.layers}")
    torch.set_num_threads(1)
    try:
        if args.measure:
            print(json.dumps(measure(*map(int, args.measure.split(",")))))
            return
        if args.layers:
            LAYERS[:] = sorted({max(2, args.layers // 4), max(2, args.layers // 2), args.layers})
        run(args.quick)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
