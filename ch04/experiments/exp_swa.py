"""第 4 章 · 实验　滑动窗口注意力（SWA）：只看最近 W 个词元，还能知道多远以前的事？

问题：　每层只看最近 4 个词元，4 层叠起来最多能看到多远？缓存不再变大，损失要多付多少？
先猜：　4 层、每层看 4 个：能看到 4 个，16 个，还是别的数？（先想 10 秒，再运行）
看点：　① 右上图：影响力在某个距离之外一个不剩，那个距离正好是 层数 × (W − 1)；② 左上图：窗口满了，缓存就是一条平线；
        ③ 下面两幅要合起来看：写故事，近处的字符就够用，看得窄反而学得快；要回忆 23 个词元以前的事，够不着的只能猜。
        所以 Gemma 3 五层窗口配一层全看：省下大半缓存，又不至于失忆。
动手改：1. --window 1：注意力形同虚设，只凭当前的字符猜下一个，写故事的损失三个里最高；--window 64：三个模型逐位相同。
        2. --stride 1：一层窗口、一层全看，交替着来（Gemma 2 的做法）。
        3. 把 forward 里的 window + t - 1 改成 window：分段送提示词的自查变成 ✗，因为这一段里最早的查询，要看的键被扔早了。

运行：
    python ch04/experiments/exp_swa.py               # 图片写到 ch04/outputs/
    python ch04/experiments/exp_swa.py --quick
    约 81 秒，0.7 GB（2 核 CPU）

形状记号：b 批大小　t 这次送进来几个词元　c 缓存里的加新来的　w 缓存里留下几个　s 这次看得见几个
　　　　　d 嵌入维度　h 头数　k 每个头的维度　V 词表大小
"""

import argparse
import os
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"


def kv_bytes_per_layer(batch, context_length, head_dim, n_kv_heads, bytes_per_elem):
    """一层的 KV 缓存占多少字节：每个词元、每份键值，存一个键和一个值。

    参数:
        batch (int): 批大小
        context_length (int): 这一层留着几个词元；有窗口的层最多留 W 个
        head_dim (int): 每个头的维度 k
        n_kv_heads (int): 键和值有几份；普通的多头注意力是头数
        bytes_per_elem (int): 每个数几个字节

    返回:
        int: 字节数
    """
    return batch * context_length * head_dim * n_kv_heads * 2 * bytes_per_elem


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
        context_length (int): 已经有几个词元
        sliding_window_size (int): 窗口 W
        stride (int): 见 uses_window
        emb_dim (int): 嵌入维度 d
        n_heads (int): 头数 h
        n_kv_heads (int): 键和值有几份
        n_layers (int): 层数
        batch_size (int): 批大小
        bytes_per_elem (int): 每个数几个字节

    返回:
        int: 字节数
    """
    kept = [min(context_length, sliding_window_size) if uses_window(layer, stride) else context_length for layer in range(n_layers)]
    return sum(kv_bytes_per_layer(batch_size, each, emb_dim // n_heads, n_kv_heads, bytes_per_elem) for each in kept)


class MultiHeadAttentionWithSWA(nn.Module):
    """滑动窗口注意力（sliding window attention）：每个词元只看自己和前面 W − 1 个。

        全看　x . . . . .　　　W = 3　x . . . . .
        　　　x x . . . .　　　　　　　x x . . . .
        　　　x x x . . .　　　　　　　x x x . . .
        　　　x x x x . .　　　　　　　. x x x . .　　左下角也遮掉：太早的不看，
        　　　x x x x x .　　　　　　　. . x x x .　　所以它们的键和值可以扔掉

    这里仍然先算 (t, s) 个分数再遮，省的是缓存；要连计算也省下来，得像 FlashAttention 那样一块一块地跳过。

    参数:
        d_in (int): 输入维度
        d_out (int): 输出维度，必须能被 num_heads 整除
        dropout (float): 注意力权重的丢弃率
        num_heads (int): 头数 h
        qkv_bias (bool): Q、K、V 的投影带不带偏置
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


# region 沿用 ch04/experiments/exp_gqa.py: cache_error, encode_characters, validation_loss, train, seed_noise
def cache_error(model, ids):
    """缓存对不对：一个词元一个词元地带着缓存送进去，与一次送完相比，logits 最多差多少。（详解见 ch04/experiments/exp_gqa.py）"""
    model.eval()
    model.reset_kv_cache()
    with torch.no_grad():
        cached = torch.cat([model(token, use_cache=True) for token in ids.split(1, dim=1)], dim=1)  # (b, t, V)
        return (cached - model(ids)).abs().max().item()


def encode_characters(text):
    """按字符编号，前九成作训练集，后一成作验证集。（详解见 ch04/experiments/exp_gqa.py）"""
    chars = sorted(set(text))
    number = {char: i for i, char in enumerate(chars)}
    ids = torch.tensor([number[char] for char in text])
    return ids[: len(ids) * 9 // 10], ids[len(ids) * 9 // 10 :], chars


def validation_loss(model, ids, context_length):
    """整个验证集的平均损失：首尾相接地切成若干段，一批算完。（详解见 ch04/experiments/exp_gqa.py）"""
    model.eval()
    n = (len(ids) - 1) // context_length * context_length
    inputs, targets = ids[:n].view(-1, context_length), ids[1 : n + 1]  # (b, t)，(b·t,)
    with torch.no_grad():
        return nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets).item()


def train(model, train_ids, val_ids, context_length, steps, title, extra_loss=None):
    """训练一个小模型，记下验证损失的曲线。（详解见 ch04/experiments/exp_gqa.py）"""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    curve = [(0, validation_loss(model, val_ids, context_length))]
    for step in tqdm(range(1, steps + 1), desc=title, unit="步", leave=False, disable=None):
        model.train()
        starts = torch.randint(len(train_ids) - context_length, (16, 1), generator=generator)  # (b, 1)
        window = train_ids[starts + torch.arange(context_length + 1)]  # (b, t + 1)
        loss = nn.functional.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        if extra_loss is not None:
            loss = loss + extra_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % max(1, steps // 12) == 0 or step == steps:
            curve.append((step, validation_loss(model, val_ids, context_length)))
    return curve


def seed_noise(curve, other):
    """同样的结构只换初始权重的种子，验证损失会差多少：比这还小的差别，不能算在结构头上。（详解见 ch04/experiments/exp_gqa.py）"""
    return max(abs(first[1] - second[1]) for first, second in list(zip(curve, other))[len(curve) // 2 :])


# endregion


def cache_growth(model, ids):
    """一个词元一个词元地送进去，每送一个，量一次真的缓存有多大。

    参数:
        model (nn.Module): 带缓存的 GPT
        ids (Tensor): 词元编号，(1, t)

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
        model (nn.Module): GPT
        ids (Tensor): 词元编号，(1, t)

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


def recall_accuracy(model, steps, title, length=24, choices=16):
    """回忆测试：一串随机的词元，最后要说出第一个是什么。先训练，再用没见过的串考。

    参数:
        model (nn.Module): 没训练过的 GPT
        steps (int): 训练几步
        title (str): 进度条上的名字
        length (int): 一串几个词元；答案在 length − 1 个词元以前
        choices (int): 词元有几种；纯猜的准确率是 1 / choices

    返回:
        float: 准确率
    """
    generator = torch.Generator().manual_seed(0)  # 每个模型看到的串完全相同
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in tqdm(range(steps), desc=title, unit="步", leave=False, disable=None):
        ids = torch.randint(choices, (64, length), generator=generator)  # (b, t)
        loss = nn.functional.cross_entropy(model(ids)[:, -1], ids[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        ids = torch.randint(choices, (1024, length), generator=generator)  # (b, t)
        return (model(ids)[:, -1].argmax(dim=-1) == ids[:, 0]).float().mean().item()


def draw(growth, influences, curves, recall, path):
    """四幅图：缓存的增长、影响力随距离的变化、训练曲线、回忆测试。

    参数:
        growth (dict): 名字 → cache_growth 的结果
        influences (dict): 名字 → influence 的结果
        curves (dict): 名字 → train 的结果
        recall (dict): 名字 → recall_accuracy 的结果
        path (Path): 图片写到哪里
    """
    figure, ((cache, reach), (story, memory)) = plt.subplots(2, 2, figsize=(10.4, 8), layout="constrained")
    for number, name in enumerate(curves):
        style = {"label": name, "color": f"C{number}"}
        cache.plot(range(1, len(growth[name]) + 1), [size / 1024 for size in growth[name]], **style)
        reach.plot([each or float("nan") for each in influences[name]], marker=".", markersize=4, **style)  # 0 画不上对数刻度，断开
        story.plot(*zip(*curves[name]), **style)
        memory.bar_label(memory.bar(name.replace("，", "\n"), recall[name], color=f"C{number}"), fmt="{:.0%}", padding=6)
    reach.set_yscale("log")
    memory.axhline(1 / 16, color="gray", linestyle=":")
    memory.set_ylim(0, 1.1)
    labels = [("已经有几个词元", "实测的 KV 缓存（KB）"), ("离最后一个词元多远（断在哪里，就看到哪里）", "影响力（梯度的长度，对数刻度）"), ("训练步数", "写故事：验证损失"), ("虚线：纯猜", "回忆 23 个词元以前：准确率")]
    for axis, (x, y) in zip((cache, reach, story, memory), labels):
        axis.set_xlabel(x)
        axis.set_ylabel(y)
    for axis in (cache, reach, story):
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
    """同一个小模型，只改每层看多远，比缓存、看得见的距离和损失。"""
    parser = argparse.ArgumentParser(description="实验　滑动窗口注意力：只看最近几个词元")
    parser.add_argument("--window", type=int, default=4, help="窗口 W，含自己（默认：4）")
    parser.add_argument("--stride", type=int, default=3, help="混合模型里，每几层有窗口的跟一层全看的（默认：3，即四层里一层全看）")
    parser.add_argument("--layers", type=int, default=4, help="层数（默认：4）")
    parser.add_argument("--steps", type=int, default=300, help="写故事训练几步，回忆训练一半（默认：300）")
    parser.add_argument("--seed", type=int, default=123, help="初始权重的随机种子（默认：123）")
    parser.add_argument("--quick", action="store_true", help="只训练 10 步，几秒钟走完全程")
    args = parser.parse_args()
    context = 64
    for name, low, high in [("window", 1, context), ("stride", 1, 100), ("layers", 1, 32), ("steps", 1, 100000), ("seed", 0, 2**62)]:
        if not low <= getattr(args, name) <= high:
            parser.error(f"--{name} 应在 {low} 到 {high} 之间，不能是 {getattr(args, name)}")
    steps, window = min(args.steps, 10) if args.quick else args.steps, args.window
    path = find_data("the-verdict.txt", "story-en.txt")
    train_ids, val_ids, chars = encode_characters(path.read_text(encoding="utf-8"))
    print(f"数据　{path}　{len(train_ids) + len(val_ids):,} 个字符，{len(chars)} 种")
    print(f"模型　{args.layers} 层，d = 64，8 个头，上下文 {context}；每个训练 {steps} 步，窗口 {window}")
    cfg = {"vocab_size": len(chars), "context_length": context, "emb_dim": 64, "n_heads": 8, "n_layers": args.layers, "drop_rate": 0.0, "qkv_bias": False}

    full, mixed, local = "全看", f"{args.stride} 层窗口，1 层全看", f"每层窗口 {window}"
    growth, influences, curves, recall, chunked, cached, reach = {}, {}, {}, {}, {}, {}, {}
    ids = val_ids[None, :context]  # (1, t)
    for name, stride in [(full, 0), (mixed, args.stride), (local, -1)]:
        torch.manual_seed(args.seed)
        model = GPTModel(cfg | {"sliding_window_size": window, "sliding_window_stride": stride})
        reach[name] = sum(each > 0 for each in influence(model, ids))  # 训练之前就数：练久了，注意力权重可能小到变成 0
        curves[name] = train(model, train_ids, val_ids, context, steps, name)
        growth[name], influences[name] = cache_growth(model, ids), influence(model, ids)
        model.reset_kv_cache()
        with torch.no_grad():
            pieces = torch.cat([model(piece, use_cache=True) for piece in ids.split(10, dim=1)], dim=1)  # (1, t, V)
            chunked[name] = (pieces - model(ids)).abs().max().item()
        cached[name] = cache_error(model, ids)
        torch.manual_seed(args.seed)
        recall[name] = recall_accuracy(GPTModel(cfg | {"sliding_window_size": window, "sliding_window_stride": stride}), -(-steps // 2), f"{name}，回忆")
    torch.manual_seed(args.seed + 1)
    other = train(GPTModel(cfg | {"sliding_window_size": window, "sliding_window_stride": 0}), train_ids, val_ids, context, steps, "换个种子")
    noise = seed_noise(curves[full], other)

    print("\n方式　　　　　　　　看得见几个　写满的缓存　公式算的　写故事的损失　比全看　回忆 23 个以前")
    exact = True
    for name, stride in [(full, 0), (mixed, args.stride), (local, -1)]:
        formula = estimate_totals(context, window, stride, 64, 8, 8, args.layers, bytes_per_elem=4)
        exact &= growth[name][-1] == formula
        loss = curves[name][-1][1]
        print(f"{name.ljust(10, '　')}{reach[name]:6}{growth[name][-1]:13,} B{formula:9,} B{loss:13.3f}{loss - curves[full][-1][1]:+10.3f}{recall[name]:12.0%}")
    print(f"{'换个种子的全看'.ljust(10, '　')}{other[-1][1]:43.3f}{other[-1][1] - curves[full][-1][1]:+10.3f}")

    book = (32768, 1024, 5, 4096, 32)
    sizes = [estimate_totals(*book[:2], stride, *book[3:], kv, 32) / 1e9 for stride in (0, 5) for kv in (32, 8)]
    windows = sum(uses_window(layer, 5) for layer in range(32))
    print(f"\n放大到书中的配置（32 层，d = 4096，32 个头，32768 个词元，窗口 1024，5 : 1，bfloat16）：{windows} 层有窗口，{32 - windows} 层全看")
    print(f"  MHA {sizes[0]:.2f} GB　GQA（8 份）{sizes[1]:.2f} GB　MHA 加窗口 {sizes[2]:.2f} GB　GQA 加窗口 {sizes[3]:.2f} GB")
    draw(growth, influences, curves, recall, OUTPUTS / "swa.png")
    print(f"图片已写到 {OUTPUTS / 'swa.png'}")

    far = min(context, args.layers * (window - 1) + 1)
    print("\n所以（都是这一次量的）：")
    print(f"  每层看 {window} 个，{args.layers} 层接力看到 {reach[local]} 个：每叠一层，多看 {window - 1} 个，与卷积网络的感受野同一个道理。")
    for name in (mixed, local):
        gap = curves[name][-1][1] - curves[full][-1][1]
        verdict = "没有超过" if abs(gap) <= noise else f"{'差' if gap > 0 else '好'}得超过了"
        print(f"  {name}：缓存是全看的 {growth[name][-1] / growth[full][-1]:.2f} 倍；写故事的损失 {gap:+.3f}，{verdict}换个种子的差别（{noise:.3f}）；", end="")
        print(f"回忆的准确率 {recall[name]:.0%}，全看是 {recall[full]:.0%}。")

    print("\n这个数字对吗？")
    confirm(f"每层都有窗口时，正好看见 层数 × (W - 1) + 1 = {far} 个（上下文放得下的话）", reach[local] == far, "左下角的掩码差了一格")
    confirm("缓存实测与公式一个字节不差，连背后的整块内存都算上", exact, "只切片没有 clone，旧内存没还")
    if far < 24:
        confirm(f"够不着的只能猜：回忆的准确率 {recall[local]:.1%} 接近 1 / 16", abs(recall[local] - 1 / 16) < 0.04, "左下角没有遮，或考题泄露了答案")
    confirm("每 10 个一段地送进去，与一次送完的 logits 相同（最多差千分之一）", all(each < 1e-3 for each in chunked.values()), "这一段里最早的查询，要看的键被扔早了")
    confirm("一个一个地送进去也相同", all(each < 1e-3 for each in cached.values()), "位置数的是缓存里有几个，而不是见过几个")
    torch.manual_seed(args.seed)
    plain = MultiHeadAttention(64, 64, context, 0.0, 8)
    torch.manual_seed(args.seed)
    wide = MultiHeadAttentionWithSWA(64, 64, 0.0, 8, sliding_window_size=16)
    x = torch.randn(2, 16, 64)  # (2, 16, 64)
    confirm("窗口不小于句子时，与第 3 章的 MultiHeadAttention 输出相同", torch.allclose(plain(x), wide(x), atol=1e-6), "窗口没有把自己算进去")
    same_as_book = (windows, *[f"{size:.2f}" for size in sizes]) == (27, "17.18", "4.29", "3.14", "0.78")
    confirm("书中的配置：27 层有窗口，17.18、4.29、3.14、0.78 GB，与原书仓库相同", same_as_book, "忘了乘 2，或层数分错了")


if __name__ == "__main__":
    main()
