"""第 4 章 · 实验　同样多的参数，要深还是要宽？

问题：　层数和宽度怎样决定参数、内存和速度？块里参数相同的"深而窄"和"浅而宽"，哪个快？
先猜：　宽度翻倍，参数变几倍？层数翻倍呢？2 层 × 512 维、8 层 × 256 维、32 层 × 128 维，块里参数一样多，哪个快？（先想 10 秒，再运行）
看点：　① 块里的参数约是 12 × 层数 × d²：宽度的平方，层数的一次方；② 参数相同，运算次数也几乎相同，每秒做的运算却可以差好几倍；
        ③ 训练要的内存，是权重的 4 倍，激活值还没算；④ 按这台机器的速度，训练 GPT-2 small 要多久。
动手改：1. --tokens 16：各种形状每秒的词元都少了，每秒的运算也少了：活太少，时间花在别处（读权重、更新参数、一层层地调用）。
        2. --tokens 512：活多了，看几种形状的差距怎样变。
        3. 把 SHAPES 里的 (32, 128) 换成 (128, 64)：块里参数仍然一样多，还要慢。

运行：
    python ch04/experiments/exp_model_scales.py               # 图片写到 ch04/outputs/
    python ch04/experiments/exp_model_scales.py --quick
    约 20 秒，2.5 GB（2 核 CPU）

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　k 每个头的维度　V 词表大小
"""

import argparse
import statistics
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from matplotlib.ticker import NullFormatter

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
# 词表取得很小：50257 的词表会让输出层盖过一切，看不出块的形状有什么影响。
BASE = {"vocab_size": 512, "context_length": 1024, "drop_rate": 0.0, "qkv_bias": False}
SHAPES = [(2, 512), (8, 256), (32, 128)]  # 层数、d；块里的参数都约是 12 × 524,288
GRID = [(layers, emb_dim) for layers in (2, 8, 32) for emb_dim in (128, 256, 512) if (layers, emb_dim) != (32, 512)]  # 32 × 512 有一亿个参数，太占内存


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


def build(layers, emb_dim, device):
    """建一个模型，每个头 64 维。

    参数:
        layers (int): 层数
        emb_dim (int): 嵌入维度 d
        device (str 或 torch.device): 建在哪里；"meta" 只有形状
    返回:
        GPTModel: 模型

    异常:
        ValueError: d 不能被 64 整除
    """
    if emb_dim % 64 != 0:
        raise ValueError(f"d = {emb_dim} 不能被 64 整除，无法分成每个 64 维的头")
    torch.manual_seed(123)
    with torch.device(device):
        return GPTModel(BASE | {"n_layers": layers, "emb_dim": emb_dim, "n_heads": emb_dim // 64})


def flops_per_token(layers, emb_dim, t, vocab_size):
    """前向传播时，每个词元要几次运算（乘和加各算一次）；推导见 exp_flops_and_params.py。

    参数:
        layers (int): 层数
        emb_dim (int): 嵌入维度
        t (int): 序列长度
        vocab_size (int): 词表大小

    返回:
        int: 次数
    """
    return layers * (24 * emb_dim**2 + 4 * t * emb_dim) + 2 * vocab_size * emb_dim


class Trainer:
    """一种形状的模型，连同它的优化器：能做一次推理，也能做一步训练。

    参数:
        layers (int): 层数
        emb_dim (int): 嵌入维度
        idx (Tensor): 输入，(b, t)；目标也用它，只看快慢
        device (torch.device): 在哪里算
    """

    def __init__(self, layers, emb_dim, idx, device):
        self.model, self.idx = build(layers, emb_dim, device), idx
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.train()  # 走一步，梯度和 AdamW 的动量才真的占上内存

    def forward(self):
        """推理一次。

        返回:
            Tensor: 最后一个词元的编号，用 item 取它，才等到 GPU 算完
        """
        with torch.no_grad():
            return self.model(self.idx)[0, -1].argmax()

    def train(self):
        """训练一步。

        返回:
            Tensor: 损失
        """
        loss = nn.functional.cross_entropy(self.model(self.idx).flatten(0, 1), self.idx.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def nbytes(self):
        """真的去量：权重、梯度、AdamW 的两份动量，一共多少字节。

        返回:
            int: 字节数，不含激活值
        """
        parameters = list(self.model.parameters())
        states = [value for state in self.optimizer.state.values() for value in state.values() if value.ndim]  # 步数只有一个数，不算
        return sum(tensor.nbytes for tensor in [*parameters, *[p.grad for p in parameters], *states])


def draw(results, path):
    """左：参数和速度；右：参数和每秒运算次数，同样多的参数，形状不同，速度不同。

    参数:
        results (dict): （层数，d）→ {"params", "train", "gflops"}
        path (Path): 图片写到哪里
    """
    def plain(axis):
        low, high = axis.get_view_interval()  # 对数刻度默认写成 10 的几次方；跨度不到十倍时，连小刻度也标上
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("{x:g}" if high < 10 * low else NullFormatter())

    figure, axes = plt.subplots(1, 2, figsize=(8.8, 3.8), layout="constrained")
    for axis, key, title in zip(axes, ("train", "gflops"), ("训练：词元/秒", "训练：每秒多少十亿次运算")):
        for layers in sorted({layers for layers, _ in results}):
            points = [(each["params"] / 1e6, each[key]) for shape, each in results.items() if shape[0] == layers]
            axis.plot(*zip(*points), marker="o", label=f"{layers} 层")
        for (_, emb_dim), each in results.items():
            axis.annotate(emb_dim, (each["params"] / 1e6, each[key]), textcoords="offset points", xytext=(5, 4), fontsize=7, color="gray")
        axis.set_xscale("log")
        axis.set_xlabel("参数，百万个（点旁是 d）")
        axis.set_title(title, fontsize=10)
        axis.margins(x=0.1, y=0.1)
        plain(axis.xaxis)
    axes[0].set_yscale("log")
    plain(axes[0].yaxis)
    axes[0].legend(fontsize=8)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


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


def main():
    """每种形状量参数、内存、速度。"""
    parser = argparse.ArgumentParser(description="实验　同样多的参数，要深还是要宽")
    parser.add_argument("--tokens", type=int, default=256, help="序列长度 t（默认：256）")
    parser.add_argument("--rounds", type=int, default=5, help="轮流量几遍（默认：5）")
    parser.add_argument("--device", default="cpu", help="auto、mps、cuda 或 cpu（默认：cpu）")
    parser.add_argument("--quick", action="store_true", help="少几种形状，序列缩短到 32")
    args = parser.parse_args()
    for name, low, high in [("tokens", 1, BASE["context_length"]), ("rounds", 2, 100)]:
        if not low <= getattr(args, name) <= high:
            parser.error(f"--{name} 应在 {low} 到 {high} 之间，不能是 {getattr(args, name)}")
    t, rounds = (min(args.tokens, 32), 3) if args.quick else (args.tokens, args.rounds)
    grid = [shape for shape in GRID if shape[1] < 512 and shape[0] < 32] if args.quick else GRID
    print(f"批大小 1，序列 {t} 个词元，每个头 64 维，词表 {BASE['vocab_size']}", flush=True)
    torch.set_num_threads(1)  # 只用一个核：take_turns 就能看 CPU 时间，不怕别的程序打扰
    try:
        device = pick_device(args.device)
        idx = torch.randint(BASE["vocab_size"], (1, t)).to(device)  # (b, t)
        trainers = {shape: Trainer(*shape, idx, device) for shape in dict.fromkeys([*grid, *SHAPES])}
    except ValueError as error:
        parser.error(str(error))

    turns = take_turns({(kind, shape): getattr(trainer, kind) for shape, trainer in trainers.items() for kind in ("forward", "train")}, rounds, device)
    print("\n层数     d        参数  块里参数  训练占内存 MB  推理 词元/秒　训练 词元/秒（四分位）　训练 十亿次/秒")
    results = {}
    for (layers, emb_dim), trainer in trainers.items():
        parameters = sum(p.numel() for p in trainer.model.parameters())
        in_blocks = sum(p.numel() for p in trainer.model.trf_blocks.parameters())
        forward, train = ([t / seconds for seconds in turns[kind, (layers, emb_dim)]] for kind in ("forward", "train"))
        low, middle, high = quartiles(train)
        gflops = 3 * flops_per_token(layers, emb_dim, t, BASE["vocab_size"]) * middle / 1e9  # 前向一份，反向两份
        results[layers, emb_dim] = {"params": parameters, "blocks": in_blocks, "bytes": trainer.nbytes(), "rates": train, "train": middle, "gflops": gflops}
        print(f"{layers:4}{emb_dim:6}{parameters:12,}{in_blocks / 12 / layers / emb_dim**2:6.3f} × 12Ld²{trainer.nbytes() / 2**20:9.1f}", end="")
        print(f"{statistics.median(forward):14,.0f}{middle:14,.0f}（{low:,.0f}–{high:,.0f}）{gflops:10.1f}")
    draw(results, OUTPUTS / "model_scales.png")
    print(f"图片已写到 {OUTPUTS / 'model_scales.png'}")

    print("\n所以（都是这一次量的）：")
    same = {shape: results[shape] for shape in SHAPES}
    fastest, slowest = (pick(same, key=lambda shape: same[shape]["train"]) for pick in (max, min))
    print(f"  块里参数几乎相同的三种形状，训练最快的 {fastest[0]} 层 × {fastest[1]}，每秒的词元是最慢的 {slowest[0]} 层 × {slowest[1]} 的 {compare(same[fastest]['rates'], same[slowest]['rates'])}；")
    print(f"  每秒的运算是 {same[fastest]['gflops']:.1f} 对 {same[slowest]['gflops']:.1f} 十亿次。（学得好不好是另一回事：GPT-2 加大时，深度和宽度是一起加的。）")
    peak = max(each["gflops"] for each in results.values())
    days = 9e9 / (peak * 1e9 / (3 * flops_per_token(12, 768, 1024, 50257))) / 86400
    print(f"  GPT-2 的训练文本有 40 GB，粗略算 90 亿个词元：只看一遍，small 在这台机器的一个核上，按最快的 {peak:.0f} 十亿次/秒，要 {days:,.0f} 天。")

    print("\n这个数字对吗？")
    worst = max(abs(each["blocks"] / (12 * layers * emb_dim**2) - 1) for (layers, emb_dim), each in results.items())
    confirm(f"块里的参数约是 12 × 层数 × d²（最多差 {worst:.1%}，差的是偏置和归一化）", worst < 0.02, "前馈网络不是 4 倍，或多了 Q、K、V 的偏置")
    confirm("训练占的内存正好是权重的 4 倍：权重、梯度、两份动量，每个参数 16 字节", all(each["bytes"] == 16 * each["params"] for each in results.values()), "精度不是 float32，或优化器不是 AdamW")
    counts = [each["blocks"] for each in same.values()]
    confirm(f"三种形状，块里的参数相差不到 2%（{min(counts):,} 到 {max(counts):,}）", max(counts) / min(counts) < 1.02, "层数 × d² 不相等，比的就不只是形状了")


if __name__ == "__main__":
    main()
