"""第 4 章 · 实验　滑动窗口注意力（SWA）：只看最近 W 个词元，还能知道多远以前的事？

问题：　每层只看最近 4 个词元，2 层叠起来最多能看到多远？缓存不再变大，损失要多付多少？
先猜：　2 层、每层看 4 个：能看到 4 个，8 个，还是别的数？（先想 10 秒，再运行）
看点：　① 影响力在某个距离之外一个不剩，那个距离正好是 层数 × (W − 1)；② 窗口满了，缓存就是一条平线；
        ③ 写故事：窗口窄的，走到四分之一时领先吗？最后还领先吗？"学得快"和"最后低"是两回事；④ 要回忆够不着的词元，就只能猜，
        所以 Gemma 3 五层窗口配一层全看。训练时全看、推理时才扔，是另一回事，见 exp_swa_sinks.py。
动手改：1. --window 1：注意力形同虚设，只凭当前的字符猜下一个，与数数差不多；--window 32：三个模型逐位相同，差全是 0。
        2. --layers 4 --stride 3：三层窗口、一层全看；每层窗口 4 的，看得见几个？先算再看。
        3. 把 forward 里的 window + t - 1 都改成 window：分段送提示词的自查变成 ✗，因为这一段里最早的查询，要看的键被扔早了。

运行：
    python ch04/experiments/exp_swa.py               # 图片写到 ch04/outputs/
    python ch04/experiments/exp_swa.py --quick
    约 140 秒，0.9 GB（2 核 CPU）；训练过的存着，再运行就立刻出结果

形状记号：b 批大小　t 这次送进来几个词元　c 缓存里的加新来的　w 缓存里留下几个　s 这次看得见几个
　　　　　d 嵌入维度　h 头数　k 每个头的维度　V 词表大小（这里词元就是字符）
"""

import argparse
import hashlib
import json
import math
import os
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
CONTEXT, LENGTH, CHOICES = 32, 12, 16  # 写故事的上下文长度；回忆测试一串几个词元，词元有几种
CONFIG = {"context_length": CONTEXT, "emb_dim": 64, "n_heads": 4, "drop_rate": 0.0, "qkv_bias": False}


def uses_window(layer, stride):
    """第几层用窗口：每 stride 层有窗口的，跟一层全看的（原书的 K:1）。

    参数:
        layer (int): 层号，从 0 起
        stride (int): K；0 表示每层都全看，负数表示每层都有窗口

    返回:
        bool: 这一层用窗口
    """
    return stride < 0 or stride > 0 and layer % (stride + 1) < stride


def estimate_totals(context_length, sliding_window_size, stride, emb_dim, n_heads, n_kv_heads, n_layers, batch_size=1, bytes_per_elem=2):
    """各层加起来，KV 缓存占多少字节。

    参数:
        context_length, sliding_window_size, stride (int): 已经有几个词元；窗口 W；见 uses_window
        emb_dim, n_heads, n_kv_heads (int): 嵌入维度 d，头数 h，键和值有几份
        n_layers, batch_size, bytes_per_elem (int): 层数，批大小，每个数几个字节

    返回:
        int: 字节数
    """
    kept = [min(context_length, sliding_window_size) if uses_window(layer, stride) else context_length for layer in range(n_layers)]
    return batch_size * sum(kept) * (emb_dim // n_heads) * n_kv_heads * 2 * bytes_per_elem  # 2：一个键，一个值


class MultiHeadAttentionWithSWA(nn.Module):
    """滑动窗口注意力（sliding window attention）：每个词元只看自己和前面 W − 1 个。

        全看　x . . . . .　　　W = 3　x . . . . .
        　　　x x . . . .　　　　　　　x x . . . .
        　　　x x x . . .　　　　　　　x x x . . .
        　　　x x x x . .　　　　　　　. x x x . .　　左下角也遮掉：太早的不看，
        　　　x x x x x .　　　　　　　. . x x x .　　所以它们的键和值可以扔掉

    这里仍然先算 (t, s) 个分数再遮，省的是缓存；要连计算也省下来，得像 FlashAttention 那样一块一块地跳过。

    参数:
        d_in, d_out (int): 输入、输出维度；d_out 必须能被 num_heads 整除
        dropout, num_heads, qkv_bias (float, int, bool): 与第 3 章的 MultiHeadAttention 相同
        sliding_window_size (int 或 None): 窗口 W，含自己；None 表示全看

    异常:
        ValueError: d_out 不能被 num_heads 整除，或窗口小于 1

    出处: 原书仓库 ch04/06_swa；Beltagy 等，Longformer，2020；Gemma 3 技术报告，2025
    """

    def __init__(self, d_in, d_out, dropout, num_heads, qkv_bias=False, sliding_window_size=None):
        super().__init__()
        if d_out % num_heads != 0:
            raise ValueError(f"d_out={d_out} 不能被 num_heads={num_heads} 整除，无法平均分给每个头")
        if sliding_window_size is not None and sliding_window_size < 1:
            raise ValueError(f"窗口至少是 1（只看自己），不能是 {sliding_window_size}")
        self.d_out, self.num_heads, self.head_dim = d_out, num_heads, d_out // num_heads
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.out_proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)
        self.sliding_window_size = sliding_window_size
        self.reset_cache()

    def reset_cache(self):
        """忘掉缓存，换一段话之前要调用。"""
        self.cache_k = self.cache_v = None

    def forward(self, x, use_cache=False):
        """前向传播。

        参数:
            x (Tensor): (b, t, d)
            use_cache (bool): 接着缓存里的词元往下算，并把新的键和值存进去

        返回:
            Tensor: (b, t, d_out)
        """
        b, t, _ = x.shape
        queries = self.W_query(x).view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        keys = self.W_key(x).view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        values = self.W_value(x).view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        window = self.sliding_window_size or t + (0 if self.cache_k is None else self.cache_k.shape[2])
        if use_cache:
            if self.cache_k is not None:
                keys = torch.cat([self.cache_k, keys], dim=2)  # (b, h, c, k)
                values = torch.cat([self.cache_v, values], dim=2)  # (b, h, c, k)
            # 存下来的只要最近 W 个。陷阱：切片只是视图，整块旧内存会被它拉着不放，clone 一份才真的省下来。
            self.cache_k, self.cache_v = keys[:, :, -window:].clone(), values[:, :, -window:].clone()  # (b, h, w, k)，(b, h, w, k)
            # 这一次要看的多一些：t 个新查询里，最早的那个还要看它前面的 W − 1 个。
            keys, values = keys[:, :, -(window + t - 1) :], values[:, :, -(window + t - 1) :]

        scores = queries @ keys.transpose(2, 3)  # (b, h, t, s)
        s = keys.shape[2]
        everything = torch.ones(t, s, dtype=torch.bool, device=x.device)  # (t, s)
        # 第 i 个查询是全部 s 个里的第 s − t + i 个：右上角遮未来，左下角遮窗口之外的过去。
        scores.masked_fill_(everything.triu(s - t + 1) | everything.tril(s - t - window), -torch.inf)
        weights = self.dropout(torch.softmax(scores / self.head_dim**0.5, dim=-1))  # (b, h, t, s)
        context = (weights @ values).transpose(1, 2).reshape(b, t, self.d_out)  # (b, t, d_out)
        return self.out_proj(context)


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


# region 改写 ch04/main: TransformerBlock, GPTModel
class TransformerBlock(nn.Module):
    """Transformer 块，注意力可以有窗口。（原版详解见 ch04/main/example_05_transformer_block.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.att = MultiHeadAttentionWithSWA(  # 改：换成有窗口的；掩码现算，不要 context_length
            d_in=cfg["emb_dim"],
            d_out=cfg["emb_dim"],
            sliding_window_size=cfg["sliding_window_size"],  # 改：配置里多一个键，窗口多大
            num_heads=cfg["n_heads"],
            dropout=cfg["drop_rate"],
            qkv_bias=cfg["qkv_bias"],
        )
        self.ff = FeedForward(cfg)
        self.norm1 = LayerNorm(cfg["emb_dim"])
        self.norm2 = LayerNorm(cfg["emb_dim"])
        self.drop_shortcut = nn.Dropout(cfg["drop_rate"])

    def forward(self, x, use_cache=False):  # 改：要不要用缓存，一路传下去
        shortcut = x
        x = self.norm1(x)
        x = self.att(x, use_cache)  # (b, t, d)　改：只有注意力有缓存
        x = self.drop_shortcut(x)
        x = x + shortcut
        shortcut = x
        x = self.norm2(x)
        x = self.ff(x)  # (b, t, d)
        x = self.drop_shortcut(x)
        return x + shortcut


class GPTModel(nn.Module):
    """GPT，几层有窗口，几层全看，可以带缓存。（原版详解见 ch04/main/example_06_gpt_model.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.Sequential(*[TransformerBlock(cfg) for _ in range(cfg["n_layers"])])
        for layer, block in enumerate(self.trf_blocks):  # 改：K 层有窗口，一层全看，如此循环
            if not uses_window(layer, cfg["sliding_window_stride"]):  # 改：同上
                block.att.sliding_window_size = None  # 改：同上
        self.final_norm = LayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)
        self.current_pos = 0  # 改：见过几个词元；缓存会扔掉旧的，所以位置不能数缓存里有几个

    # 改：换一段话之前，每层的缓存和位置一起清零
    def reset_kv_cache(self):
        for block in self.trf_blocks:
            block.att.reset_cache()
        self.current_pos = 0

    def forward(self, in_idx, use_cache=False):  # 改：要不要用缓存
        t = in_idx.shape[1]
        start = self.current_pos if use_cache else 0  # 改：有缓存时，位置接着数
        if start + t > self.pos_emb.num_embeddings:  # 改：连见过的一起数
            raise ValueError(f"输入有 {start + t} 个词元，超过了模型的上下文长度 {self.pos_emb.num_embeddings}")  # 改：同上
        tok_embeds = self.tok_emb(in_idx)  # (b, t, d)
        pos_embeds = self.pos_emb(torch.arange(start, start + t, device=in_idx.device))  # (t, d)　改：从 start 数起
        self.current_pos = start + t if use_cache else self.current_pos  # 改：记下数到哪里了
        x = tok_embeds + pos_embeds  # (b, t, d)
        x = self.drop_emb(x)
        for block in self.trf_blocks:  # 改：要传第二个参数，nn.Sequential 只传一个，所以自己一块一块地调用
            x = block(x, use_cache)  # (b, t, d)
        x = self.final_norm(x)
        return self.out_head(x)  # (b, t, V)


# endregion


# region 沿用 ch04/experiments/exp_gqa.py: cache_error
def cache_error(model, ids):
    """缓存对不对：一个词元一个词元地带着缓存送进去，与一次送完相比，logits 最多差多少。（详解见 ch04/experiments/exp_gqa.py）"""
    model.eval()
    model.reset_kv_cache()
    with torch.no_grad():
        cached = torch.cat([model(token, use_cache=True) for token in ids.split(1, dim=1)], dim=1)  # (b, t, V)
        return (cached - model(ids)).abs().max().item()


# endregion


# region 沿用 ch04/experiments/exp_seed_noise.py: encode_characters, bigram_loss, validation_loss, train, milestones, side_by_side, paired_interval, verdict, draw_differences
def encode_characters(text):
    """按字符编号，前九成作训练集，后一成作验证集。（详解见 ch04/experiments/exp_seed_noise.py）"""
    chars = sorted(set(text))
    number = {char: i for i, char in enumerate(chars)}
    ids = torch.tensor([number[char] for char in text])
    return ids[: len(ids) * 9 // 10], ids[len(ids) * 9 // 10 :], chars


def bigram_loss(train_ids, val_ids, vocab_size):
    """只看前一个字符、靠数数猜下一个，验证损失是多少：不比它低，就什么上下文也没有学到。（详解见 ch04/experiments/exp_seed_noise.py）"""
    pairs = train_ids[:-1] * vocab_size + train_ids[1:]
    counts = torch.bincount(pairs, minlength=vocab_size**2).view(vocab_size, vocab_size) + 0.1  # (V, V)
    probs = counts / counts.sum(dim=1, keepdim=True)
    return -probs[val_ids[:-1], val_ids[1:]].log().mean().item()


def validation_loss(model, ids, context_length):
    """整个验证集的平均损失：首尾相接地切成若干段，一批算完。（详解见 ch04/experiments/exp_seed_noise.py）"""
    model.eval()
    n = (len(ids) - 1) // context_length * context_length
    inputs, targets = ids[:n].view(-1, context_length), ids[1 : n + 1]  # (b, t)，(b·t,)
    with torch.no_grad():
        return nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets).item()


def train(model, train_ids, val_ids, context_length, steps, seed, extra_loss=None):
    """训练一个小模型，记下验证损失的曲线。（详解见 ch04/experiments/exp_seed_noise.py）"""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.1)
    curve = [(0, validation_loss(model, val_ids, context_length))]
    for step in range(1, steps + 1):
        model.train()
        starts = torch.randint(len(train_ids) - context_length, (16, 1), generator=generator)  # (b, 1)
        window = train_ids[starts + torch.arange(context_length + 1)]  # (b, t + 1)
        loss = nn.functional.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        if extra_loss is not None:
            loss = loss + extra_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % max(1, steps // 20) == 0 or step == steps:
            curve.append((step, validation_loss(model, val_ids, context_length)))
    return curve


def milestones(curve):
    """一条曲线，两个问题：学得快不快，最后低不低。（详解见 ch04/experiments/exp_seed_noise.py）"""
    return curve[len(curve) // 4][1], min(loss for _, loss in curve)


def side_by_side(job, cases, folder, workers=None):
    """每个 case 运行一次 job(*case)，几个进程并排，做完一个存一个；存过的直接读。（详解见 ch04/experiments/exp_seed_noise.py）"""
    source = Path(job.__globals__["__file__"]).read_bytes()
    paths = {case: folder / f"{hashlib.sha256(source + repr(case).encode()).hexdigest()[:16]}.json" for case in cases}
    todo = [case for case in paths if not paths[case].is_file()]
    folder.mkdir(parents=True, exist_ok=True)

    def save(case, result):
        part = paths[case].with_suffix(".part")
        part.write_text(json.dumps(result), encoding="utf-8")
        os.replace(part, paths[case])
    workers = min(workers or os.cpu_count(), len(todo))
    progress = tqdm(total=len(todo), desc="训练", unit="个", leave=False, disable=None if todo else True)
    if workers <= 1:
        torch.set_num_threads(1)
        for case in todo:
            save(case, job(*case))
            progress.update()
    else:
        with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            running = {pool.submit(job, *case): case for case in todo}
            try:
                for future in as_completed(running):
                    save(running[future], future.result())
                    progress.update()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    progress.close()
    return {case: json.loads(path.read_text(encoding="utf-8")) for case, path in paths.items()}


def paired_interval(differences):
    """几个种子的差，平均是多少，真正的平均差有 99% 的把握落在哪里。（详解见 ch04/experiments/exp_seed_noise.py）"""
    t99 = {5: 4.604, 6: 4.032, 7: 3.707, 8: 3.499, 9: 3.355, 10: 3.250}
    n = len(differences)
    if n not in t99:
        raise ValueError(f"有 {n} 个差，要 5 到 10 个：更少，区间宽得没有用；更多，t99 里要添一项")
    return statistics.mean(differences), t99[n] * statistics.stdev(differences) / math.sqrt(n)


def verdict(differences):
    """损失的差该怎么说：区间整个在 0 的一边才算数，跨过 0 就是分不出。（详解见 ch04/experiments/exp_seed_noise.py）"""
    mean, half = paired_interval(differences)
    return "分不出" if abs(mean) <= half else ("更低" if mean < 0 else "更高")


def draw_differences(axis, differences, quick=False):
    """一行一种变体：每个种子的差是一个点，粗线是 99% 区间，竖线是 0。（详解见 ch04/experiments/exp_seed_noise.py）"""
    for row, values in enumerate(differences.values()):
        axis.scatter(values, [row] * len(values), s=14, color="tab:blue", alpha=0.6, zorder=3)
        if not quick:
            mean, half = paired_interval(values)
            color = "0.5" if abs(mean) <= half else ("tab:green" if mean < 0 else "tab:red")
            axis.plot([mean - half, mean + half], [row, row], linewidth=6, alpha=0.5, color=color, solid_capstyle="butt")
    axis.axvline(0, color="black", linewidth=1)
    axis.set_yticks(range(len(differences)), list(differences))
    axis.set_ylim(len(differences) - 0.5, -0.5)


# endregion


# region 沿用 ch04/experiments/exp_moe.py: told
def told(differences, quick):
    """几个种子的差，写成一句：平均 ± 99% 区间的半宽，再加结论；训练太短就不下结论。（详解见 ch04/experiments/exp_moe.py）"""
    if quick:
        return f"{statistics.mean(differences):+.3f}　训练太短：看流程，不下结论"
    return "{:+.3f} ± {:.3f}　".format(*paired_interval(differences)) + verdict(differences)


# endregion


def cache_growth(model, ids):
    """一个词元一个词元地送进去，每送一个，量一次真的缓存有多大。

    参数:
        model, ids (nn.Module, Tensor): 带缓存的 GPT；词元编号，(1, t)

    返回:
        list[int]: 每一步之后，各层缓存合计的字节数
    """
    model.eval()
    model.reset_kv_cache()
    sizes = []
    for token in ids.split(1, dim=1):
        with torch.no_grad():
            model(token, use_cache=True)
        # untyped_storage 是背后整块内存的大小；nbytes 只数视图看得见的那一段，会把没还的内存漏掉。
        sizes.append(sum(cached.untyped_storage().nbytes() for block in model.trf_blocks for cached in (block.att.cache_k, block.att.cache_v)))
    return sizes


def influence(model, ids):
    """前面每个词元对最后一个位置的输出有多大影响：输出对它的词嵌入的梯度有多长。

    参数:
        model, ids (nn.Module, Tensor): GPT；词元编号，(1, t)

    返回:
        list[float]: 第 i 项是距离为 i 的词元的影响，第 0 项是最后一个词元自己
    """
    model.eval()
    embedded = []
    hook = model.tok_emb.register_forward_hook(lambda _module, _inputs, output: embedded.append(output))  # 留住词嵌入，好对它求梯度
    logits = model(ids)  # (1, t, V)
    hook.remove()
    (gradient,) = torch.autograd.grad(logits[0, -1].square().sum(), embedded)  # (1, t, d)
    return gradient[0].norm(dim=-1).flip(0).tolist()


def build(layers, window, stride, vocab_size, seed):
    """一个还没训练的小模型。

    参数:
        layers, window, stride (int): 层数；窗口 W；见 uses_window
        vocab_size, seed (int): 词表大小；初始权重

    返回:
        GPTModel: d = 64，4 个头
    """
    torch.manual_seed(seed)
    return GPTModel(CONFIG | {"vocab_size": vocab_size, "n_layers": layers, "sliding_window_size": window, "sliding_window_stride": stride})


def train_once(path, layers, window, stride, steps, seed):
    """写故事：训练一次，窗口怎样安排、种子由参数定，其余都相同。

    参数:
        path (str): 文本文件
        layers, window, stride, steps, seed (int): 见 build；走几步；初始权重和批的次序

    返回:
        list: train 的结果
    """
    train_ids, val_ids, chars = encode_characters(Path(path).read_text(encoding="utf-8"))
    return train(build(layers, window, stride, len(chars), seed), train_ids, val_ids, CONTEXT, steps, seed)


def recall_once(layers, window, stride, steps, seed):
    """回忆测试：一串随机的词元，最后要说出第一个是什么。先训练，再用没见过的串考。

    参数:
        layers, window, stride, steps, seed (int): 见 build；训练几步；初始权重和考题（同一个种子，看到的串完全相同）

    返回:
        float: 答错的比例；纯猜是 1 − 1 / CHOICES
    """
    model, generator = build(layers, window, stride, CHOICES, seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        ids = torch.randint(CHOICES, (32, LENGTH), generator=generator)  # (b, t)
        loss = nn.functional.cross_entropy(model(ids)[:, -1], ids[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        ids = torch.randint(CHOICES, (2048, LENGTH), generator=generator)  # (b, t)
        return (model(ids)[:, -1].argmax(dim=-1) != ids[:, 0]).float().mean().item()


def draw(growth, influences, curves, bigram, differences, wrong, quick, path):
    """五幅图：缓存的增长、影响力随距离的变化、训练曲线；两种差、回忆测试。

    参数:
        growth, influences (dict): 名字 → cache_growth、influence 的结果
        curves (dict): 名字 → 每个种子的曲线
        bigram (float): 只看前一个字符的损失
        differences, wrong (dict): 名字 → 每个种子写故事的差；名字 → 每个种子答错的比例
        quick, path (bool, Path): True 时不画区间；图片写到哪里
    """
    figure, axes = plt.subplot_mosaic([["cache"] * 2 + ["reach"] * 2 + ["story"] * 2, ["gaps"] * 3 + ["memory"] * 3], figsize=(13, 7.6), layout="constrained")
    for number, name in enumerate(curves):
        style = {"label": name, "color": f"C{number}"}
        axes["cache"].plot(range(1, len(growth[name]) + 1), [size / 1024 for size in growth[name]], **style)
        axes["reach"].plot([each or float("nan") for each in influences[name]], marker=".", markersize=4, **style)  # 0 画不上对数刻度，断开
        for i, curve in enumerate(curves[name]):
            axes["story"].plot(*zip(*curve[1:]), color=f"C{number}", linewidth=0.8, alpha=0.6, label=None if i else name)
        axes["memory"].scatter([number] * len(wrong[name]), [100 * each for each in wrong[name]], color=f"C{number}", alpha=0.6)
    axes["reach"].set_yscale("log")
    axes["story"].axhline(bigram, color="0.5", linestyle="--", label="只看前一个字符，数数")
    axes["memory"].axhline(100 - 100 / CHOICES, color="0.5", linestyle="--", label="纯猜")
    axes["memory"].set_xticks(range(len(wrong)), list(wrong))
    axes["memory"].set(xlim=(-0.5, len(wrong) - 0.5), ylim=(-5, 105))
    draw_differences(axes["gaps"], differences, quick)
    axes["gaps"].locator_params(axis="x", nbins=6)
    labels = [("已经有几个词元", "实测的 KV 缓存（KB）"), ("离最后一个词元多远（断在哪里，就看到哪里）", "没训练时的影响力（梯度的长度）"), ("训练步数", "写故事：验证损失")]
    labels += [("写故事：损失减去全看的（往左是更低）", "窗口的安排"), ("窗口的安排", f"回忆 {LENGTH - 1} 个以前：答错的比例（%）")]
    for (name, axis), (x, y) in zip(axes.items(), labels):
        axis.set_xlabel(x)
        axis.set_ylabel(y)
        if name != "gaps":
            axis.legend()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


# region 沿用 setup/find_data.py: find_data
def find_data(*names):
    """到几个数据文件夹里依次找，返回找到的第一个；都没有，就说先运行哪条命令，退出码 2。（详解见 setup/find_data.py）"""
    here = Path(__file__ if "__file__" in globals() else "x").resolve()
    root = next((folder for folder in here.parents if (folder / "setup" / "data").is_dir()), Path())
    for folder in [os.environ.get("LLM_DATA_DIR"), root / "setup" / "downloads", root / "setup" / "data", root / "ch05" / "outputs"]:
        for name in names:
            path = Path(folder or "") / name
            if folder and (path.is_file() or any(path.glob("*"))):
                return path
    commands = {"tiktoken": "setup/prepare.py", "gpt_mini.pth": "ch05/main/gpt_train.py（约 90 秒）"}
    commands |= {f"gpt2-{size}.pth": f"ch05/main/gpt_download.py --size {size}" for size in ("124M", "355M", "774M", "1558M")}
    print(f"找不到 {names[0]}，请先运行 python {commands.get(names[0], 'setup/download.py')}", file=sys.stderr)
    sys.exit(2)


# endregion


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def main():
    """同一个小模型，只改每层看多远，比缓存、看得见的距离和两种任务。"""
    parser = argparse.ArgumentParser(description="实验　滑动窗口注意力：只看最近几个词元")
    parser.add_argument("--window", type=int, default=4, help="窗口 W，含自己（默认：4）")
    parser.add_argument("--stride", type=int, default=1, help="混合模型里，每几层有窗口的跟一层全看的（默认：1，一层窗口、一层全看，与 Gemma 2 相同）")
    parser.add_argument("--layers", type=int, default=2, help="层数（默认：2）")
    parser.add_argument("--steps", type=int, default=700, help="写故事训练几步，回忆训练五分之一（默认：700）")
    parser.add_argument("--seeds", type=int, default=5, help="每种训练几个种子，5 到 10（默认：5）")
    parser.add_argument("--seed", type=int, default=123, help="第一个种子；各个种子是它乘 1000 再加 0、1、2……（默认：123）")
    parser.add_argument("--quick", action="store_true", help="两个种子，各训练 4 步：看流程，不下结论")
    args = parser.parse_args()
    for name, low, high in [("window", 1, CONTEXT), ("stride", 1, 100), ("layers", 1, 32), ("steps", 1, 100000), ("seeds", 5, 10), ("seed", 0, 2**50)]:
        if not low <= getattr(args, name) <= high:
            parser.error(f"--{name} 应在 {low} 到 {high} 之间，不能是 {getattr(args, name)}")
    steps, seeds = 4 if args.quick else args.steps, [args.seed * 1000 + i for i in range(2 if args.quick else args.seeds)]
    window, layers, workers, recall_steps = args.window, args.layers, 1 if args.quick else None, -(-steps // 5)
    path = find_data("the-verdict.txt", "story-en.txt")
    train_ids, val_ids, chars = encode_characters(path.read_text(encoding="utf-8"))
    bigram = bigram_loss(train_ids, val_ids, len(chars))
    print(f"数据　{path}　{len(train_ids) + len(val_ids):,} 个字符，{len(chars)} 种")
    print(f"模型　{layers} 层，d = 64，4 个头，上下文 {CONTEXT}，窗口 {window}；{len(seeds)} 个种子，各 {steps} 步")

    full, mixed, local = "全看", f"{args.stride} 层窗口，1 层全看", f"每层窗口 {window}"
    strides = {full: 0, mixed: args.stride, local: -1}
    done = side_by_side(train_once, [(str(path), layers, window, stride, steps, seed) for seed in seeds for stride in strides.values()], OUTPUTS / "exp_swa", workers)
    answers = side_by_side(recall_once, [(layers, window, stride, recall_steps, seed) for seed in seeds for stride in strides.values()], OUTPUTS / "exp_swa", workers)
    curves = {name: [done[(str(path), layers, window, stride, steps, seed)] for seed in seeds] for name, stride in strides.items()}
    wrong = {name: [answers[(layers, window, stride, recall_steps, seed)] for seed in seeds] for name, stride in strides.items()}
    short = args.quick or statistics.mean(milestones(curve)[1] for curve in curves[full]) > bigram  # 还不如数数：没练够

    torch.set_num_threads(1)
    ids, growth, influences, errors, exact = val_ids[None, :CONTEXT], {}, {}, [], True  # ids 是 (1, t)
    print("\n方式　　　　　　　　看得见几个　写满的缓存　公式算的")
    for name, stride in strides.items():
        # 与训练无关，用没训练过的量：练久了，注意力权重可能小到变成 0，反而数不准。
        model = build(layers, window, stride, len(chars), args.seed)
        growth[name], influences[name] = cache_growth(model, ids), influence(model, ids)
        errors.append(cache_error(model, ids))
        formula = estimate_totals(CONTEXT, window, stride, 64, 4, 4, layers, bytes_per_elem=4)
        exact &= growth[name][-1] == formula
        print(f"{name.ljust(10, '　')}{sum(each > 0 for each in influences[name]):6}{growth[name][-1]:13,} B{formula:9,} B")

    scores = {name: [milestones(curve) for curve in several] for name, several in curves.items()}
    print(f"\n写故事，最低的验证损失（只看前一个字符、数数，是 {bigram:.3f}）：", end="")
    print("　".join(f"{name} {statistics.mean(low for _, low in several):.3f}" for name, several in scores.items()))
    print("减去同一个种子的「全看」（± 是 99% 区间的半宽，比它小的差，这个实验看不出）：")
    differences, late = {}, sum(min(curve, key=lambda point: point[1])[0] > 0.9 * steps for curve in curves[full])
    for which, title in enumerate(["四分之一时", "最低的"]):
        for name in (mixed, local):
            values = [a[which] - b[which] for a, b in zip(scores[name], scores[full])]
            differences[f"{name}\n{title}".replace("，", "\n")] = values
            print(f"  {title.ljust(5, '　')}　{name.ljust(12, '　')}{told(values, short)}")
    if not short:
        print(f"  全看的 {len(seeds)} 条曲线，有 {late} 条在最后一成的步数里还创新低：没走到头的，「最低的」里就还有快慢的成分")
    print(f"回忆 {LENGTH - 1} 个以前的词元，答错的比例（纯猜 {1 - 1 / CHOICES:.0%}）：" + "　".join(f"{name} {statistics.mean(each):.0%}" for name, each in wrong.items()))
    for name in (mixed, local):
        print(f"  减去全看的　{name.ljust(12, '　')}{told([a - b for a, b in zip(wrong[name], wrong[full])], short)}")

    cfg = (32768, 1024, 5, 4096, 32)
    sizes = [estimate_totals(*cfg, kv, 32) / 1e9 for kv in (32, 8)]
    windows = sum(uses_window(layer, 5) for layer in range(32))
    print(f"\n书中的配置（32 层，d = 4096，32 个头，32768 个词元，窗口 1024，5 : 1，bfloat16）：{windows} 层有窗口，{32 - windows} 层全看")
    print(f"  缓存 {sizes[0]:.2f} GB；再合用键和值（GQA，8 份）{sizes[1]:.2f} GB。都全看时要多少，见 exp_gqa.py")
    draw(growth, influences, curves, bigram, differences, wrong, short, OUTPUTS / "swa.png")
    print(f"图片已写到 {OUTPUTS / 'swa.png'}")

    print("\n这个数字对吗？")
    far = min(CONTEXT, layers * (window - 1) + 1)
    confirm(f"每层都有窗口时，正好看见 层数 × (W - 1) + 1 = {far} 个（上下文放得下的话）", sum(each > 0 for each in influences[local]) == far, "左下角的掩码差了一格")
    confirm("缓存实测与公式一个字节不差，连背后的整块内存都算上", exact, "只切片没有 clone，旧内存没还")
    if far < LENGTH:
        guess = statistics.mean(wrong[local])
        confirm(f"够不着的只能猜：答错 {guess:.1%}，接近 15 / 16", abs(guess - 1 + 1 / CHOICES) < 0.03, "左下角没有遮，或考题泄露了答案")
    model.reset_kv_cache()  # 最后一个模型，每层都有窗口
    with torch.no_grad():
        pieces = torch.cat([model(piece, use_cache=True) for piece in ids.split(10, dim=1)], dim=1)  # (1, t, V)
        confirm("每 10 个一段地送进去，与一次送完的 logits 相同（最多差千分之一）", (pieces - model(ids)).abs().max() < 1e-3, "这一段里最早的查询，要看的键被扔早了")
    confirm("一个一个地送进去也相同", max(errors) < 1e-3, "位置数的是缓存里有几个，而不是见过几个")
    confirm("书中的配置：27 层有窗口，3.14、0.78 GB，与原书仓库相同", (windows, *[f"{size:.2f}" for size in sizes]) == (27, "3.14", "0.78"), "忘了乘 2，或层数分错了")


if __name__ == "__main__":
    main()
