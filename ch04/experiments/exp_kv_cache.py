"""第 4 章 · 实验　KV 缓存：不重算已经算过的，能快多少，要多少内存？

问题：　每生成一个词元，就把整段话从头算一遍；把算过的键和值存下来（KV 缓存），能快多少倍？代价是多少内存？
先猜：　快的倍数，会随着句子变长而变大、变小，还是不变？满了上下文长度之后呢？（先想 10 秒，再运行）
看点：　① 每种缓存写出的词元，与不缓存的逐个相同：缓存不是近似；② 左图：不缓存的那条线越来越低。小模型的参数大多在输出层，
        只算最后一个位置的输出，不用缓存就快了多少？再加上缓存，又快多少？过了上下文长度，缓存每一步都作废，只剩前一样；
        ③ 中图：提示词一次送进去（预填充，prefill），每个词元的用时比一个一个送（解码，decode）少得多：权重读一遍，给所有词元用；
        ④ 右图：拼接每一步都把旧的抄一遍，句子越长越慢；预分配只写新来的一个，慢得少得多（稍有上升：
        轮流测，拼接刚把 CPU 的缓存冲掉）。带子和短线是四分位：一半的测量落在里面。
动手改：1. 把 GPTModel.forward 里的 offset = … 改成 offset = 0（人人都犯过）：程序照样跑，速度照样快，自查变成 ✗。
        2. 把 visible 里的 torch.arange(s - t, s, device=device) 换成 torch.arange(t, device=device)：带缓存的几条自查都变成 ✗：
           一个一个送时，新词元只看得见最早的那一个。只有一次送完的那一步没有错：前面没有旧词元，掩码恰好对。
        3. --context-length 128：句子短一半，快满时的倍数也小得多。

运行：
    python ch04/experiments/exp_kv_cache.py               # 图片写到 ch04/outputs/
    python ch04/experiments/exp_kv_cache.py --quick
    约 90 秒，0.8 GB（2 核 CPU）

形状记号：b 批大小　t 这一次送进来几个词元　s 一共看得见几个（缓存里的加新来的）　d 嵌入维度　h 头数　k 每个头的维度　V 词表大小
"""

import argparse
import statistics
import time
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from matplotlib.ticker import LogLocator
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
SIZES = {"emb_dim": 192, "n_heads": 6, "n_layers": 4}  # 改这里：模型多大
PROMPT = 16  # 提示词的长度；权重是随机的，提示词也随机，只看快慢和对错
CHUNK = 16  # 分段预填充：提示词一次最多送几个，分数占的内存从 h × t × t 减到 h × 16 × t


class ConcatCache:
    """一层的 KV 缓存，最直白的写法：每来一批新的键和值，就用 torch.cat 接在后面。

    缺点：每一步都要申请一块新内存，把旧的全部抄过去；句子越长，抄得越多。
    """

    def __init__(self):
        self.reset()

    def reset(self):
        """忘掉一切。换一段话之前必须调用，否则新的话会接着旧的往下写。"""
        self.keys = self.values = None
        self.length = 0  # 见过几个词元，也就是下一个词元的位置

    def update(self, keys, values):
        """存下新的，交出全部。

        参数:
            keys (Tensor): 新词元的键，(b, h, t, k)
            values (Tensor): 新词元的值，(b, h, t, k)

        返回:
            tuple[Tensor, Tensor]: 看得见的全部键和值，(b, h, s, k)
        """
        self.length += keys.shape[2]
        if self.keys is not None:
            keys = torch.cat([self.keys, keys], dim=2)  # (b, h, s, k)
            values = torch.cat([self.values, values], dim=2)  # (b, h, s, k)
        self.keys, self.values = keys, values
        return keys, values


class PreallocatedCache:
    """一层的 KV 缓存，预分配：一次要够内存，新来的填进下一个空位，旧的一个也不动。

    参数:
        capacity (int): 最多放几个词元
    """

    def __init__(self, capacity):
        self.capacity, self.keys, self.values = capacity, None, None
        self.reset()

    def reset(self):
        """忘掉一切，内存留着下次用。"""
        self.length = 0  # 填到第几格，也就是下一个词元的位置；改小它，就退回到那里

    def update(self, keys, values):
        """存下新的，交出全部。

        参数:
            keys (Tensor): 新词元的键，(b, h, t, k)
            values (Tensor): 新词元的值，(b, h, t, k)

        返回:
            tuple[Tensor, Tensor]: 看得见的全部键和值，(b, h, s, k)；是缓存的一段，没有复制
        """
        b, h, t, k = keys.shape
        if self.keys is None:
            self.keys, self.values = keys.new_empty(b, h, self.capacity, k), values.new_empty(b, h, self.capacity, k)
        end = self.length + t
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


def visible(t, s, device):
    """哪个新词元看得见哪个键：有没有缓存、分不分段，都用这一条公式。

    参数:
        t (int): 新词元有几个；它们总是最后的 t 个
        s (int): 键有几个
        device (torch.device): 建在哪里

    形状:
        (t, s)，True 表示看得见

    返回:
        Tensor: 掩码
    """
    # 陷阱：有了缓存，掩码不再是左上角的 (t, t)：第 i 个新词元前面还有 s − t 个旧的。
    return torch.arange(s, device=device) <= torch.arange(s - t, s, device=device)[:, None]  # (t, s)　键不在查询后面


# region 沿用 ch04/main: LayerNorm, GELU, FeedForward
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


# endregion


# region 改写 ch03/main: MultiHeadAttention
class MultiHeadAttention(nn.Module):
    """多头注意力，可以带缓存。（原版详解见 ch03/main/example_05_multihead_attention.py）"""

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
        # 改：掩码的形状每次不同，前向时现算，不再登记 mask

    def forward(self, x, cache=None):  # 改：cache 是这一层的缓存；None 就与原版相同
        b, t, _ = x.shape
        queries = self.W_query(x)  # (b, t, d_out)
        keys = self.W_key(x)  # (b, t, d_out)
        values = self.W_value(x)  # (b, t, d_out)
        queries = queries.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        keys = keys.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        values = values.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        if cache is not None:  # 改：查询只要新词元的，键和值要连同以前的：旧词元看不到新词元，它们的键和值不会再变
            keys, values = cache.update(keys, values)
        scores = queries @ keys.transpose(2, 3)  # (b, h, t, s)　改：从 (t, t) 变成 (t, s)
        scores.masked_fill_(~visible(t, keys.shape[2], x.device), -torch.inf)  # 改：掩码要知道前面有几个旧的
        weights = torch.softmax(scores / self.head_dim**0.5, dim=-1)  # (b, h, t, s)
        weights = self.dropout(weights)
        context = (weights @ values).transpose(1, 2)  # (b, t, h, k)
        context = context.contiguous().view(b, t, self.d_out)  # (b, t, d_out)
        return self.out_proj(context)


# endregion


# region 改写 ch04/main: TransformerBlock, GPTModel
class TransformerBlock(nn.Module):
    """Transformer 块，把缓存转交给注意力。（原版详解见 ch04/main/example_05_transformer_block.py）"""

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

    def forward(self, x, cache=None):  # 改：多收一个缓存
        shortcut = x
        x = self.norm1(x)
        x = self.att(x, cache)  # (b, t, d)　改：只有注意力用得着它；前馈网络各算各的词元，没有什么可存
        x = self.drop_shortcut(x)
        x = x + shortcut
        shortcut = x
        x = self.norm2(x)
        x = self.ff(x)  # (b, t, d)
        x = self.drop_shortcut(x)
        return x + shortcut


class GPTModel(nn.Module):
    """GPT，可以带缓存。（原版详解见 ch04/main/example_06_gpt_model.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.Sequential(*[TransformerBlock(cfg) for _ in range(cfg["n_layers"])])
        self.final_norm = LayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)

    def forward(self, in_idx, caches=None):  # 改：caches 是每层一个缓存的列表
        t = in_idx.shape[1]
        offset = caches[0].length if caches else 0  # 改：新词元的位置接着旧的数；忘了它不报错，只是写出来的不对
        if offset + t > self.pos_emb.num_embeddings:  # 改：连旧的一起数
            raise ValueError(f"输入有 {offset + t} 个词元，超过了模型的上下文长度 {self.pos_emb.num_embeddings}")  # 改：同上
        tok_embeds = self.tok_emb(in_idx)  # (b, t, d)
        pos_embeds = self.pos_emb(torch.arange(offset, offset + t, device=in_idx.device))  # (t, d)　改：从 offset 数起
        x = tok_embeds + pos_embeds  # (b, t, d)
        x = self.drop_emb(x)
        for block, cache in zip(self.trf_blocks, caches or [None] * len(self.trf_blocks)):  # 改：每一块用自己的缓存
            x = block(x, cache)  # (b, t, d)
        x = self.final_norm(x)
        return self.out_head(x)  # (b, n, V)　n 是 t；last_only 时是 1


# endregion


def generate_stream(model, idx, max_new_tokens, context_size, caches=None, keep=None, chunk=None):
    """贪心解码，生成一个交出一个；有没有缓存，走的是同一段代码。

    参数:
        model (nn.Module): 带缓存的 GPT
        idx (Tensor): 提示词的词元编号，(b, t)
        max_new_tokens (int): 生成几个
        context_size (int): 一次最多看几个词元
        caches (list 或 None): 每层一个缓存；None 表示每步从头算
        keep (int 或 None): 满了之后留下最近几个，从头再来；None 表示留满 context_size 个，这正是书上 generate_text_simple 的做法
        chunk (int 或 None): 提示词一次最多送几个（分段预填充）；None 表示一次送完

    返回:
        Iterator[tuple[int, float]]: 每步一项：新词元，和最大的两个 logits 之差（太小就是平局，谁先谁后不算错）
    """
    start = max(0, idx.shape[1] - context_size)  # 从哪个词元看起
    for cache in caches or []:
        cache.reset()
    for _ in range(max_new_tokens):
        if idx.shape[1] - start > context_size:
            # 满了。窗口往后挪一格，每个词元的位置都变了，位置嵌入早已混进所有的键和值：缓存全部作废，只能重来。
            # 这是绝对位置（GPT-2）的毛病：RoPE 的键按各自的位置转好再存，点积只看隔多远（见 exp_mla.py），挪动窗口不必重转；
            # 不过第 2 层起，旧的键里还混着已经挪出去的词元，与从头算不会逐位相同。
            start = idx.shape[1] - (keep or context_size)
            for cache in caches or []:
                cache.reset()
        new = idx[:, start + (caches[0].length if caches else 0) :]  # (b, n)　缓存里还没有的，平时只有刚生成的那一个
        with torch.no_grad():
            for piece in new.split(chunk or new.shape[1], dim=1):
                logits = model(piece, caches)[:, -1]  # (b, V)
        top = logits.topk(2, dim=-1)
        idx = torch.cat((idx, top.indices[:, :1]), dim=1)  # (b, t + 1)
        yield idx[0, -1].item(), (top.values[0, 0] - top.values[0, 1]).item()


def last_only(model):
    """同一个模型，输出层只算最后一个位置：生成时，前面那些位置的 logits 本来就用不着。

    参数:
        model (GPTModel): 模型

    返回:
        callable: 用法与 model 相同，logits 是 (b, 1, V)
    """

    def call(in_idx, caches=None):
        hook = model.out_head.register_forward_pre_hook(lambda _, inputs: (inputs[0][:, -1:],))
        try:
            return model(in_idx, caches)
        finally:
            hook.remove()

    return call


def same(tokens, reference, gaps):
    """两次生成是否相同；第一处不同若是平局（参照的 gaps 里，最大的两个 logits 几乎没有差），也算相同。"""
    # 分段相加的次序不同，float32 的末位会差一点；分数相差不到十万分之一时，谁第一纯属偶然，之后就各走各的了。
    return next((gap < 1e-5 for a, b, gap in zip(tokens, reference, gaps) if a != b), True)


def in_turn(jobs, rounds, title="轮流量"):
    """几件事轮流做，每轮换一个先后：别的程序抢 CPU 时大家一起慢，相除就抵消了。

    参数:
        jobs (dict): 名字 → 函数，没有参数
        rounds (int): 几轮
        title (str): 进度条上的字

    返回:
        dict[str, list[float]]: 名字 → 每轮的秒数
    """
    names, seconds = list(jobs), {name: [] for name in jobs}
    for i in tqdm(range(rounds), desc=title, unit="轮", leave=False):
        first = i % len(names)  # 谁也不总跟在同一个后面：前一个用过的数据还在 CPU 的缓存里，会占便宜
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            jobs[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def compare(before, after):
    """后一个比前一个快几倍，看不看得清：同一轮的两次相除，一半的比值都在 1 的同一边，才算看得清。

    参数:
        before, after (list[float]): in_turn 量的秒数

    返回:
        tuple[float, str]: 快几倍（中位数）；"更快"、"更慢"或"分不出"
    """
    low, middle, high = statistics.quantiles([a / b for a, b in zip(before, after)], n=4)  # 四分位：去掉最小、最大各四分之一
    # 差不到 3% 的不算：同样的代码，数据换一块内存，也会差这么多。
    clear = not low <= 1 <= high and abs(middle - 1) > 0.03
    return middle, ("更快" if middle > 1 else "更慢") if clear else "分不出"


def speeds(seconds):
    """每秒几次，从慢到快三个数：四分之一、一半、四分之三的位置。"""
    return [1 / value for value in reversed(statistics.quantiles(seconds, n=4))]


def append_times(lengths, rounds):
    """只量 update：缓存里已有 s 个，再存一个要多久。别的运算一概没有，比的才是拼接与预分配。

    参数:
        lengths (list[int]): 缓存里已有几个
        rounds (int): 每种量几次

    返回:
        dict: 名字 → 已有几个 → 每次的秒数
    """
    one, jobs = torch.zeros(1, 12, 1, 64), {}  # (b, h, t, k)　GPT-2 small 的一层

    def append(cache, old):
        if isinstance(cache, ConcatCache):
            cache.keys = cache.values = old  # 退回去：每次都是在 s 个后面接一个
        cache.length = old.shape[2]
        cache.update(one, one)

    for s in lengths:
        old = torch.zeros(1, 12, s, 64)
        for name, cache in {"拼接": ConcatCache(), "预分配": PreallocatedCache(s + 1)}.items():
            cache.update(old, old)
            jobs[name, s] = partial(append, cache, old)
    seconds = in_turn(jobs, rounds)
    return {name: {s: seconds[name, s][1:] for s in lengths} for name in ("拼接", "预分配")}  # 头一次是热身


def draw(curves, context_length, prefill, appends, path):
    """左图：速度随长度；中图：一次送几个；右图：拼接与预分配。

    参数:
        curves (dict): 名字 → 每一遍每一步的秒数
        context_length (int): 上下文长度，画一条竖线
        prefill (dict): 一次送几个 → 每次的秒数
        appends (dict): append_times 的结果
        path (Path): 图片写到哪里
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13.5, 4.2), layout="constrained", width_ratios=[1.5, 1, 1])
    for color, (name, rounds) in enumerate(curves.items()):
        width = max(2, len(rounds[0]) // 40)  # 每几步合成一个点，线才不毛
        starts = range(1, len(rounds[0]) - width + 1, width)
        x, bands = [PROMPT + i + width / 2 for i in starts], [speeds([value for one in rounds for value in one[i : i + width]]) for i in starts]
        left.plot(x, [band[1] for band in bands], label=name, color=f"C{color}")
        left.fill_between(x, *zip(*[(band[0], band[2]) for band in bands]), color=f"C{color}", alpha=0.25, linewidth=0)
    left.axvline(context_length, color="gray", linestyle=":")
    left.annotate("上下文满了", (context_length, 1.01), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=9, color="gray")
    left.set(yscale="log", xlabel="已经有几个词元", ylabel="词元/秒")
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter("")
    prefill = {n: [1e3 * value / n for value in seconds] for n, seconds in prefill.items()}
    micro = {name: {s: [1e6 * value for value in seconds] for s, seconds in points.items()} for name, points in appends.items()}
    for axis, lines in [(middle, {None: prefill}), (right, micro)]:
        for name, points in lines.items():
            low, half, high = zip(*[statistics.quantiles(values, n=4) for values in points.values()])
            axis.errorbar(list(points), half, [[b - a for a, b in zip(low, half)], [b - a for a, b in zip(half, high)]], marker="o", capsize=3, label=name)
        axis.set(xscale="log", yscale="log")
        axis.set_xticks(list(points), list(points))
        axis.minorticks_off()
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
    middle.set(xlabel="一次送几个词元", ylabel="每个词元几毫秒", title="左端是解码，右端是预填充")
    right.set(xlabel="缓存里已经有几个词元", ylabel="再存一个，几微秒", title="拼接与预分配：12 个头 × 64 的一层")
    left.legend(fontsize=8)
    right.legend(fontsize=8)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def main():
    """同一个模型、同一句提示词，换着缓存生成，比词元、速度和内存。"""
    parser = argparse.ArgumentParser(description="实验　KV 缓存：快多少，要多少内存")
    parser.add_argument("--context-length", type=int, default=256, help="上下文长度（默认：256）")
    parser.add_argument("--quick", action="store_true", help="d = 96、上下文 64，几秒钟走完全程：看流程，不下结论")
    args = parser.parse_args()
    if not 4 * PROMPT <= args.context_length <= 4096:
        parser.error(f"--context-length 应在 {4 * PROMPT} 到 4096 之间，不能是 {args.context_length}")
    context, sizes = (64, SIZES | {"emb_dim": 96}) if args.quick else (args.context_length, SIZES)
    cfg = {"vocab_size": 50257, "context_length": context, "drop_rate": 0.0, "qkv_bias": False, **sizes}
    torch.set_num_threads(1)  # 矩阵这么小，几个线程合算一步只会互相等；别的程序忙时更是如此
    torch.manual_seed(123)
    model, layers = GPTModel(cfg).eval(), cfg["n_layers"]
    print(f"模型　{layers} 层，d = {cfg['emb_dim']}，{cfg['n_heads']} 头，上下文长度 {context}，权重随机，一个线程；提示词 {PROMPT} 个词元，生成到上下文满了之后再多几步", flush=True)
    ids = torch.randint(cfg["vocab_size"], (1, context))  # (b, t)
    prompt, past, rounds = ids[:, :PROMPT], 8 if args.quick else 16, 1 if args.quick else 2  # past：满了之后再走几步
    steps, half = context - PROMPT + 1 + past, context // 2
    def preallocated():
        return [PreallocatedCache(context) for _ in range(layers)]

    # ① 轮流生成：每种走一步，再换下一种。
    plans = {"不缓存": (None, None), "不缓存，只算最后的输出": (None, None), "拼接缓存": ([ConcatCache() for _ in range(layers)], None), "预分配缓存": (preallocated(), None), "预分配，满了丢一半": (preallocated(), half)}
    list(generate_stream(model, prompt, 3, context))  # 热身
    results, curves = {}, {name: [] for name in plans}
    for _ in range(rounds):
        results = {name: [] for name in plans}
        streams = {name: generate_stream(model if name == "不缓存" else last_only(model), prompt, steps, context, cached, keep) for name, (cached, keep) in plans.items()}
        jobs = {name: (lambda out=results[name], stream=streams[name]: out.append(next(stream))) for name in plans}
        for name, seconds in in_turn(jobs, steps, "轮流生成").items():
            curves[name].append(seconds)

    spans = {"开头": slice(1, 17), "快满时": slice(steps - past - 17, steps - past - 1), "满了以后": slice(steps - past, steps)}
    table = {name: {span: [value for seconds in curves[name] for value in seconds[where]] for span, where in spans.items()} for name in plans}
    print(f"\n{'词元/秒'.ljust(12, '　')}　开头　　快满时（一半的测量在这之间）　满了以后")
    for name, row in table.items():
        early, (low, late, high), after = speeds(row["开头"])[1], speeds(row["快满时"]), speeds(row["满了以后"])[1]
        print(f"{name.ljust(12, '　')}{early:6.1f}{late:10.1f}（{low:.1f} … {high:.1f}）{after:14.1f}")

    # ② 内存：一个词元在每一层留下一个键、一个值，各 d 个数，每个 4 字节。
    formula = 2 * layers * context * cfg["emb_dim"] * 4 / 2**20
    used = sum(cache.keys.nbytes + cache.values.nbytes for cache in plans["预分配缓存"][0]) / 2**20
    print(f"\n缓存　2（键和值）× 层数 × 上下文长度 × d × 4 字节 = {formula:.1f} MB；GPT-2 small 写满 1024 个是 {2 * 12 * 1024 * 768 * 4 / 2**20:.0f} MB，批大小是 8 就要再乘 8")
    print("　　　要它小：几个头合用一份（exp_gqa.py），压缩了再存（exp_mla.py），只留最近的（exp_swa.py），或者每个数只用 8 位（量化 KV 缓存）")

    # ③ 预填充与解码，前缀复用，拼接与预分配。
    cached, lengths = preallocated(), [n for n in (1, 4, 16, 64, 256) if n <= context]

    @torch.no_grad()
    def feed(piece, keep=0):
        for cache in cached:
            cache.length = keep  # 退回到第 keep 个词元
        return model(piece, cached)

    feed(ids)  # 热身
    prefill = in_turn({n: (lambda n=n: feed(ids[:, :n])) for n in lengths}, 7 if args.quick else 15, "预填充")
    shared = context * 3 // 4  # 两个问题，前面四分之三相同（同一段系统提示词）
    reuse = in_turn({"从头算": lambda: feed(ids), "前缀复用": lambda: feed(ids[:, shared:], shared)}, 7 if args.quick else 15, "前缀复用")
    appends = append_times([64, 256, 1024, 4096], 20 if args.quick else 200)
    draw(curves, context, prefill, appends, OUTPUTS / "kv_cache.png")
    print(f"图片已写到 {OUTPUTS / 'kv_cache.png'}")

    print("\n所以（都是这一次量的" + ("；--quick 次数太少：看流程，不下结论）：" if args.quick else "）："))

    def say(title, before, after):
        ratio, word = compare(before, after)
        print(f"  {title} {ratio:.1f} 倍" + ("" if args.quick else f"，{word}"))

    for span in spans:
        say(f"{span}，只算最后一个位置的输出，速度是每个位置都算的", table["不缓存"][span], table["不缓存，只算最后的输出"][span])
        say(f"{span}，再加上缓存，速度又是它的", table["不缓存，只算最后的输出"][span], table["预分配缓存"][span])
    say("满了以后，肯丢一半的速度是不缓存的", table["不缓存"]["满了以后"], table["预分配，满了丢一半"]["满了以后"])
    say(f"送 {lengths[-1]} 个词元，一次送完的速度是一个一个送的", [value * lengths[-1] for value in prefill[1]], prefill[lengths[-1]])
    say(f"前缀复用：{context} 个词元里前 {shared} 个算过了，再问只送后 {context - shared} 个，速度是从头算的", reuse["从头算"], reuse["前缀复用"])
    for s in appends["拼接"]:
        say(f"已有 {s} 个时再存一个，预分配的速度是拼接的", appends["拼接"][s], appends["预分配"][s])

    print("\n这个数字对吗？")
    chunked = list(generate_stream(model, ids[:, :half], 8, context, preallocated(), chunk=CHUNK))
    checks = {name: (results[name], results["不缓存"]) for name in ("不缓存，只算最后的输出", "拼接缓存", "预分配缓存")}
    checks["预分配，满了丢一半"] = results["预分配，满了丢一半"], list(generate_stream(model, prompt, steps, context, None, half))
    checks[f"分段预填充，每段 {CHUNK} 个"] = chunked, list(generate_stream(model, ids[:, :half], 8, context))
    for name, (ours, reference) in checks.items():
        ok = same([token for token, _ in ours], *zip(*reference))
        confirm(f"{name}：{len(ours)} 个词元与不缓存的逐个相同" + ("，过了上下文长度也相同" if len(ours) == steps else ""), ok, "位置没有接着数、掩码没算上旧的，或换上下文时没有清空缓存")
    with torch.no_grad():
        error = (feed(ids[:, shared:], shared) - model(ids)[:, shared:]).abs().max().item()
    confirm(f"前缀复用，logits 与从头算的相同（最多差 {error:.0e}）", error < 1e-4, "退回的位置不对，或掩码没算上旧的")
    confirm(f"预分配缓存正好是公式算出的 {formula:.1f} MB", abs(used - formula) < 1e-6, "键和值少存了一样，或精度不是 float32")


if __name__ == "__main__":
    main()
