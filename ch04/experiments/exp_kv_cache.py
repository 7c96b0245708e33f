"""第 4 章 · 实验　KV 缓存：不重算已经算过的，能快多少，要多少内存？

问题：　每生成一个词元，就把整段话从头算一遍；把算过的键和值存下来（KV 缓存），能快多少倍？代价是多少内存？
先猜：　快的倍数，会随着句子变长而变大、变小，还是不变？满了上下文长度之后呢？（先想 10 秒，再运行）
看点：　① 每种缓存写出的词元，与不缓存的逐个相同：缓存不是近似；② 图上，不缓存的那条线越来越低，有缓存的几乎是平的；
        ③ 过了上下文长度，缓存一步不剩地失效（位置全变了），除非肯丢掉一半。
动手改：1. --window-size 8：滑动窗口的缓存更小；它与"同样窗口、不缓存"相同，与全看的不同。
        2. 把 GPTModel.forward 里的 offset = … 改成 offset = 0（人人都犯过）：程序照样跑，速度照样快，自查变成 ✗。
        3. --context-length 128：句子短一半，快满时的倍数也小得多。

运行：
    python ch04/experiments/exp_kv_cache.py               # 图片写到 ch04/outputs/
    python ch04/experiments/exp_kv_cache.py --quick
    约 50 秒，0.9 GB（2 核 CPU）

形状记号：b 批大小　t 这一次送进来几个词元　s 一共看得见几个（缓存里的加新来的）　d 嵌入维度　h 头数　k 每个头的维度　V 词表大小
"""

import argparse
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
PROMPT = 16  # 提示词的长度；权重是随机的，提示词也随机，只看快慢和对错


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


class PreallocatedCache(ConcatCache):
    """一层的 KV 缓存，预分配：一次要够内存，新来的填进下一个空位，旧的一个也不动。

    参数:
        capacity (int): 最多放几个词元
        window_size (int 或 None): 滑动窗口：每个词元只看最近这么多个（含自己），更早的可以扔掉；None 表示全看
    """

    def __init__(self, capacity, window_size=None):
        # 有窗口时留两倍的地方：填满了才把最近的一窗搬回开头，平均每步只搬一个词元；正好留一窗，就每步都要搬。
        self.capacity, self.window_size = 2 * window_size if window_size else capacity, window_size
        super().__init__()

    def reset(self):
        """忘掉一切，内存留着下次用。"""
        self.keys = getattr(self, "keys", None)
        self.values = getattr(self, "values", None)
        self.length = self.end = 0  # end：填到第几格；搬过家之后就与 length 不同了

    def update(self, keys, values):
        """存下新的，交出看得见的。

        参数:
            keys (Tensor): 新词元的键，(b, h, t, k)
            values (Tensor): 新词元的值，(b, h, t, k)

        返回:
            tuple[Tensor, Tensor]: 看得见的键和值，(b, h, s, k)；是缓存的一段，没有复制
        """
        b, h, t, k = keys.shape
        if self.keys is None:
            self.keys, self.values = keys.new_empty(b, h, self.capacity, k), values.new_empty(b, h, self.capacity, k)
        if self.window_size and self.end + t > self.capacity:
            kept = self.window_size - 1  # 新来的第一个还要看它前面的 window_size − 1 个，不能扔早了
            for buffer in (self.keys, self.values):
                buffer[:, :, :kept] = buffer[:, :, self.end - kept : self.end].clone()  # 两段可能重叠，先复制再写
            self.end = kept
        self.keys[:, :, self.end : self.end + t] = keys
        self.values[:, :, self.end : self.end + t] = values
        self.end, self.length = self.end + t, self.length + t
        first = max(0, self.end - t - self.window_size + 1) if self.window_size else 0
        return self.keys[:, :, first : self.end], self.values[:, :, first : self.end]


def visible(t, s, window_size, device):
    """哪个新词元看得见哪个键：因果掩码和滑动窗口，缓存、分段都用这一条公式。

    参数:
        t (int): 新词元有几个；它们总是最后的 t 个
        s (int): 键有几个
        window_size (int 或 None): 只看最近几个；None 表示全看
        device (torch.device): 建在哪里

    形状:
        (t, s)，True 表示看得见

    返回:
        Tensor: 掩码
    """
    # 陷阱：有了缓存，掩码不再是左上角的 (t, t)：第 i 个新词元前面还有 s − t 个旧的。
    ahead = torch.arange(s, device=device) - torch.arange(s - t, s, device=device)[:, None]  # (t, s)　键在查询后面多远
    return (ahead <= 0) & (ahead > -window_size) if window_size else ahead <= 0


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

    def __init__(self, d_in, d_out, context_length, dropout, num_heads, qkv_bias=False, window_size=None):  # 改：多一个滑动窗口
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
        self.window_size = window_size  # 改：掩码的形状每次不同，前向时现算，不再登记 mask

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
        scores.masked_fill_(~visible(t, keys.shape[2], self.window_size, x.device), -torch.inf)  # 改：掩码要知道前面有几个旧的
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
            window_size=cfg.get("window_size"),  # 改：配置里多一个键，没有就是全看
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
        return self.out_head(x)  # (b, t, V)


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
        Iterator[tuple[Tensor, float]]: 每步一项：新词元 (b, 1)，和最大的两个 logits 之差（太小就是平局，谁先谁后不算错）
    """
    start = max(0, idx.shape[1] - context_size)  # 从哪个词元看起
    for cache in caches or []:
        cache.reset()
    for _ in range(max_new_tokens):
        if idx.shape[1] - start > context_size:
            # 满了。窗口往后挪一格，每个词元的位置都变了，位置嵌入已经混进了所有的键和值：缓存全部作废，只能重来。
            start = idx.shape[1] - (keep or context_size)
            for cache in caches or []:
                cache.reset()
        new = idx[:, start + (caches[0].length if caches else 0) :]  # (b, n)　缓存里还没有的，平时只有刚生成的那一个
        with torch.no_grad():
            for piece in new.split(chunk or new.shape[1], dim=1):
                logits = model(piece, caches)[:, -1]  # (b, V)
        top = logits.topk(2, dim=-1)
        idx_next = top.indices[:, :1]  # (b, 1)
        idx = torch.cat((idx, idx_next), dim=1)  # (b, t + 1)
        yield idx_next, (top.values[:, 0] - top.values[:, 1]).min().item()


def race(streams, steps):
    """几种生成轮流走，每种走一步再换下一种：别的程序抢 CPU 时，大家一起慢，比值不受影响。

    参数:
        streams (dict): 名字 → generate_stream 的结果
        steps (int): 各走几步

    返回:
        dict: 名字 → （词元编号，每步的秒数，每步最大的两个 logits 之差）
    """
    results = {name: ([], [], []) for name in streams}
    for _ in tqdm(range(steps), desc=f"{len(streams)} 种方式轮流生成", unit="步", leave=False):
        for name, stream in streams.items():
            start = time.perf_counter()
            idx_next, gap = next(stream)
            token = idx_next.item()  # 等 GPU 真正算完，时间才是真的
            for values, value in zip(results[name], (token, time.perf_counter() - start, gap)):
                values.append(value)
    return results


def same(tokens, reference, gaps):
    """两次生成是否相同；第一处不同若是平局，也算相同。

    参数:
        tokens (list[int]): 要检查的
        reference (list[int]): 参照
        gaps (list[float]): 参照的每一步，最大的两个 logits 之差

    返回:
        bool: 相同
    """
    # 分段相加的次序不同，float32 的末位会差一点；两个词元分数相差不到十万分之一时，谁第一纯属偶然，之后就各走各的了。
    return next((gap < 1e-5 for a, b, gap in zip(tokens, reference, gaps) if a != b), True)


def speed(seconds, first, last):
    """第 first 到第 last 步之间，每秒几个词元。

    参数:
        seconds (list[float]): 每步的秒数
        first (int): 从第几步起
        last (int): 到第几步止（不含）

    返回:
        float: 词元/秒，取中位数：偶尔被别的程序打断一下，不影响它
    """
    part = sorted(seconds[first:last])
    return 1 / part[len(part) // 2]


def pad(text, width):
    """补空格到同样宽；一个汉字占两格，str.ljust 不知道这一点。

    参数:
        text (str): 文字
        width (int): 占几格

    返回:
        str: 补好的文字
    """
    return text + " " * (width - sum(2 if ord(char) > 0x2E80 else 1 for char in text))


def draw(curves, context_length, path):
    """画速度随长度的变化。

    参数:
        curves (dict): 名字 → 每步的秒数
        context_length (int): 上下文长度，画一条竖线
        path (Path): 图片写到哪里
    """
    figure, axis = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    for name, seconds in curves.items():
        width = max(1, len(seconds) // 40)  # 每几步合成一个点，线才不毛
        middles = [(PROMPT + i + width / 2, speed(seconds, i, i + width)) for i in range(1, len(seconds) - width + 1, width)]
        axis.plot(*zip(*middles), label=name)
    axis.axvline(context_length, color="gray", linestyle=":")
    axis.annotate("上下文满了", (context_length, 1.01), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=9, color="gray")
    axis.set_yscale("log")
    ticks = [each for each in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000) if axis.get_ylim()[0] < each < axis.get_ylim()[1]]
    axis.set_yticks(ticks, ticks)
    axis.minorticks_off()
    axis.set_xlabel("已经有几个词元")
    axis.set_ylabel("词元/秒（对数刻度）")
    figure.legend(fontsize=8, loc="outside lower center", ncols=3)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


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
    """同一个模型、同一句提示词，换着缓存生成，比词元、速度和内存。"""
    parser = argparse.ArgumentParser(description="实验　KV 缓存：快多少，要多少内存")
    parser.add_argument("--context-length", type=int, default=256, help="上下文长度（默认：256）")
    parser.add_argument("--window-size", type=int, default=64, help="滑动窗口：每个词元只看最近几个（默认：64）")
    parser.add_argument("--chunk", type=int, default=32, help="分段预填充：提示词一次最多送几个（默认：32）")
    parser.add_argument("--emb-dim", type=int, default=192, help="嵌入维度 d（默认：192）")
    parser.add_argument("--heads", type=int, default=6, help="头数，必须能整除 d（默认：6）")
    parser.add_argument("--layers", type=int, default=4, help="层数（默认：4）")
    parser.add_argument("--device", default="cpu", help="auto、mps、cuda 或 cpu（默认：cpu）")
    parser.add_argument("--quick", action="store_true", help="小模型、上下文 96，几秒钟走完全程")
    args = parser.parse_args()
    if args.quick:
        args.context_length, args.window_size, args.emb_dim = 96, min(args.window_size, 24), 96
    sizes = [("emb_dim", 1, 8192), ("heads", 1, 8192), ("layers", 1, 100)]
    for name, low, high in [("context_length", 2 * PROMPT, 4096), ("window_size", 1, args.context_length), ("chunk", 1, args.context_length), *sizes]:
        if not low <= getattr(args, name) <= high:
            parser.error(f"--{name.replace('_', '-')} 应在 {low} 到 {high} 之间，不能是 {getattr(args, name)}")
    context, window = args.context_length, args.window_size
    cfg = {"vocab_size": 50257, "context_length": context, "drop_rate": 0.0, "qkv_bias": False}
    cfg |= {"emb_dim": args.emb_dim, "n_heads": args.heads, "n_layers": args.layers}
    print(f"模型　{args.layers} 层，d = {args.emb_dim}，{args.heads} 头，上下文长度 {context}，权重随机；提示词 {PROMPT} 个词元，生成到上下文满了之后再多几步", flush=True)
    try:
        device = pick_device(args.device)
        torch.manual_seed(123)
        model = GPTModel(cfg).to(device).eval()
    except ValueError as error:
        parser.error(str(error))
    windowed = GPTModel(cfg | {"window_size": window}).to(device).eval()
    windowed.load_state_dict(model.state_dict())  # 同一份权重，只是看得近

    prompt = torch.randint(cfg["vocab_size"], (1, PROMPT)).to(device)  # (b, t)
    past = 8 if args.quick else 16  # 满了之后再走几步
    steps = context - PROMPT + 1 + past
    full, half = {"keep": None}, {"keep": context // 2}

    def caches(kind, *arguments):
        return [kind(*arguments) for _ in range(args.layers)]

    # 名字 → 模型、缓存、满了之后怎么办、与谁相比
    plans = {
        "不缓存": (model, None, full, None),
        "拼接缓存": (model, caches(ConcatCache), full, "不缓存"),
        "预分配缓存": (model, caches(PreallocatedCache, context), full, "不缓存"),
        "预分配，分段预填充": (model, caches(PreallocatedCache, context), full | {"chunk": args.chunk}, "不缓存"),
        "不缓存，满了丢一半": (model, None, half, None),
        "预分配，满了丢一半": (model, caches(PreallocatedCache, context), half, "不缓存，满了丢一半"),
        f"不缓存，窗口 {window}": (windowed, None, half, None),
        f"滑动窗口 {window}": (windowed, caches(PreallocatedCache, context, window), half | {"chunk": window}, f"不缓存，窗口 {window}"),
    }
    list(generate_stream(model, prompt, 3, context))  # 热身
    streams = {name: generate_stream(each, prompt, steps, context, cached, **options) for name, (each, cached, options, _) in plans.items()}
    results = race(streams, steps)

    print(f"\n{pad('方式', 22)}    开头  快满时    倍数  满了以后   缓存 MB　　（倍数以外，都是词元/秒）")
    baseline = speed(results["不缓存"][1], steps - past - 17, steps - past - 1)
    table = {}
    for name, (_, cached, _, _) in plans.items():
        seconds = results[name][1]
        early, late, after = speed(seconds, 1, 17), speed(seconds, steps - past - 17, steps - past - 1), speed(seconds, steps - past, steps)
        used = sum(cache.keys.nbytes + cache.values.nbytes for cache in cached or []) / 2**20
        table[name] = (early, late, after, used)
        print(f"{pad(name, 22)}{early:8.1f}{late:8.1f}{late / baseline:8.1f}{after:10.1f}{used:10.1f}")

    # 一个词元在每一层留下一个键、一个值，各 d 个数，每个 4 字节。
    formula = 2 * args.layers * context * args.emb_dim * 4 / 2**20
    gpt2 = 2 * 12 * 1024 * 768 * 4 / 2**20
    print(f"\n内存：2（键和值）× 层数 × 上下文长度 × d × 4 字节 = {formula:.1f} MB；GPT-2 small 写满 1024 个是 {gpt2:.0f} MB，批大小是 8 就要再乘 8")
    scores = args.heads * context * 4 / 2**20
    print(f"预填充 {context} 个词元时，每层的注意力分数：一次送完 h × t × t，{scores * context:.2f} MB；每段 {args.chunk} 个只要 {scores * args.chunk:.2f} MB")
    draw({name: results[name][1] for name in plans if name not in (f"不缓存，窗口 {window}", "不缓存，满了丢一半", "预分配，分段预填充")}, context, OUTPUTS / "kv_cache.png")
    print(f"图片已写到 {OUTPUTS / 'kv_cache.png'}")

    plain, cached, dropped, narrow = table["不缓存"], table["预分配缓存"], table["预分配，满了丢一半"], table[f"滑动窗口 {window}"]
    print("\n所以（都是这一次量的）：")
    print(f"  从开头到快满，不缓存的速度变成 {plain[1] / plain[0]:.2f} 倍，预分配缓存变成 {cached[1] / cached[0]:.2f} 倍；", end="")
    print(f"快满时缓存是不缓存的 {cached[1] / plain[1]:.1f} 倍，用 {cached[3]:.1f} MB 换来。")
    print(f"  满了以后，要与书上的做法一字不差，缓存只剩 {cached[2] / plain[2]:.1f} 倍：每步都得重来；肯丢一半，仍有 {dropped[2] / plain[2]:.1f} 倍。")
    print(f"  滑动窗口的缓存是全看的 {narrow[3] / cached[3]:.2f} 倍大，与上下文多长无关；但它是另一个模型：看不到 {window} 个词元以前。")
    appended = table["拼接缓存"][1] / cached[1]
    print(f"  拼接缓存的速度是预分配的 {appended:.2f} 倍" + ("：每步抄一遍旧的，模型越大、句子越长越亏。" if appended < 0.95 else "：模型这么小，抄一遍旧的还不算什么；模型越大、句子越长越亏。"))

    print("\n这个数字对吗？")
    for name, (_, _, _, reference) in plans.items():
        if reference:
            ok = same(results[name][0], results[reference][0], results[reference][2])
            confirm(f"{name}：{steps} 个词元与「{reference}」逐个相同，过了上下文长度也相同", ok, "位置没有接着数、掩码没算上旧的，或换上下文时没有清空缓存")
    confirm(f"预分配缓存正好是公式算出的 {formula:.1f} MB", abs(cached[3] - formula) < 1e-6, "键和值少存了一样，或精度不是 float32")
    try:
        model(prompt.expand(1, -1).repeat(1, context // PROMPT + 1))
        refused = False
    except ValueError:
        refused = True
    confirm("超过上下文长度的输入，模型不收", refused, "位置嵌入越界，没有检查")


if __name__ == "__main__":
    main()
