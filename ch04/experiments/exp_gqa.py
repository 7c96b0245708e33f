"""第 4 章 · 实验　分组查询注意力（GQA）：几个头合用一份键和值，省多少，亏多少？

问题：　8 个头原来各有一份键和值；改成 2 份、1 份，KV 缓存小几倍，走一步快几倍，损失高多少？
先猜：　已经有一个训练好的多头模型，想换成 2 份键和值：从头再训练，还是把每 4 个头的权重取个平均，接着练几步？（先想 10 秒，再运行）
看点：　① 实测的缓存与公式一个字节不差；② 左下图：学得慢一点和最后高一点是两回事，分开看；分不出的，看区间有多宽；
        ③ 右下图：并好以后只接着练 5% 的步数，就比从头训练同样多步低一大截；取平均总比只留第一个头好吗？第一个头碰巧要紧的时候，看那几条线。
动手改：1. --groups 1 只留多查询注意力（MQA）；--groups 3 会被拒绝，因为 8 不能分成 3 组。
        2. --groups 8：自己与自己比（两个一模一样的网络）。差正好是 0，取平均、只留第一个也都等于什么都没做。
        3. 换成书上的写法：把 queries = queries.reshape(…) 一行换成 keys, values = (each.repeat_interleave(h // g, dim=1) for each in (keys, values))，
           再把 weights.reshape(…) 换成 weights：自查仍然全是 ✓，只是每走一步都要把缓存抄成 h 份。
        4. 再把其中的 repeat_interleave(h // g, dim=1) 换成 repeat(1, h // g, 1, 1)：程序照样跑，--groups 2 的自查变成 ✗，因为头认错了组。

运行：
    python ch04/experiments/exp_gqa.py               # 图片写到 ch04/outputs/
    python ch04/experiments/exp_gqa.py --quick
    约 100 秒，1.0 GB（2 核 CPU）；训练过的存着，再运行几秒钟就出结果

形状记号：b 批大小　t 这次送进来几个词元　s 看得见几个（缓存里的加新来的）　d 嵌入维度　h 头数　g 键和值有几份　k 每个头的维度　V 词表大小
"""

import argparse
import hashlib
import json
import math
import os
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
CONFIG = {"context_length": 32, "emb_dim": 64, "n_heads": 8, "n_layers": 2, "drop_rate": 0.0, "qkv_bias": False}  # 词表、份数另给


def calc_kv_bytes_total(batch, context_length, emb_dim, n_heads, n_kv_heads, n_layers, bytes_per_elem):
    """KV 缓存写满时占多少字节：每层、每个词元、每份键值（一共 n_kv_heads 份），存一个键和一个值，各 k 个数。"""
    # 陷阱：书的 memory_estimator_gqa.py 里 n_kv_groups 是"每组几个头"（32 个头、n_kv_groups = 4，得 8 份），
    # 而 GroupedQueryAttention 的 num_kv_groups 是"有几份"。同一个 4，一处省 4 倍，一处省 8 倍；这里一律传份数。
    return batch * context_length * n_layers * n_kv_heads * -(-emb_dim // n_heads) * 2 * bytes_per_elem  # k 除不尽时向上取整，与书相同


class GroupedQueryAttention(nn.Module):
    """分组查询注意力（grouped-query attention）：h 个查询头分成 g 组，同组的头合用一份键和值。

    g = h 就是多头注意力（MHA），g = 1 是多查询注意力（MQA）；Llama 3 用 g = 8，h = 32。
    查询不存进缓存，所以只省键和值：缓存、W_key、W_value 都变成原来的 g / h。

    参数:
        d_in (int): 输入维度
        d_out (int): 输出维度，必须能被 num_heads 整除
        dropout (float): 注意力权重的丢弃率
        num_heads (int): 查询头数 h
        num_kv_groups (int): 键和值的份数 g，必须整除 h
        qkv_bias (bool): Q、K、V 的投影带不带偏置

    异常:
        ValueError: d_out 不能被 num_heads 整除，或 num_heads 不能被 num_kv_groups 整除

    出处: 原书仓库 ch04/04_gqa；Ainslie 等，GQA，2023
    """

    def __init__(self, d_in, d_out, dropout, num_heads, num_kv_groups, qkv_bias=False):
        super().__init__()
        if d_out % num_heads != 0:
            raise ValueError(f"d_out={d_out} 不能被 num_heads={num_heads} 整除，无法平均分给每个头")
        if num_kv_groups < 1 or num_heads % num_kv_groups != 0:
            raise ValueError(f"{num_heads} 个头不能平均分成 {num_kv_groups} 组")
        self.d_out, self.num_heads, self.num_kv_groups = d_out, num_heads, num_kv_groups
        self.head_dim = d_out // num_heads
        # 建立的次序与 MultiHeadAttention 相同：g = h 时，同一个种子得到同样的权重。
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, num_kv_groups * self.head_dim, bias=qkv_bias)  # 唯一的改变：窄了 h / g 倍
        self.W_value = nn.Linear(d_in, num_kv_groups * self.head_dim, bias=qkv_bias)
        self.out_proj = nn.Linear(d_out, d_out)  # 原书这里不带偏置；留着它，gpt.py 的权重才装得进来
        self.dropout = nn.Dropout(dropout)
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
        h, g, k = self.num_heads, self.num_kv_groups, self.head_dim
        queries = self.W_query(x).view(b, t, h, k).transpose(1, 2)  # (b, h, t, k)
        keys = self.W_key(x).view(b, t, g, k).transpose(1, 2)  # (b, g, t, k)
        values = self.W_value(x).view(b, t, g, k).transpose(1, 2)  # (b, g, t, k)
        if use_cache:
            if self.cache_k is not None:
                keys = torch.cat([self.cache_k, keys], dim=2)  # (b, g, s, k)
                values = torch.cat([self.cache_v, values], dim=2)  # (b, g, s, k)
            self.cache_k, self.cache_v = keys, values  # 存的是 g 份，不是 h 份
        s = keys.shape[2]

        # 同组的 h/g 个头问的是同一份键，就把它们的查询排成更多的行，一次乘完。书上用 repeat_interleave 把键复制成 h 份再乘，
        # 结果相同，却把省下的读写又花了回去（书上量到 GQA 每秒 63 个词元，MHA 反而有 72 个）。
        queries = queries.reshape(b, g, h // g * t, k)  # (b, g, h/g·t, k)　第 0…h/g−1 个头归第 0 组，依次类推
        scores = (queries @ keys.transpose(2, 3)).view(b, h, t, s)  # (b, h, t, s)
        # 因果掩码：新词元前面还有 s − t 个旧的，所以对角线右移 s − t。
        scores.masked_fill_(torch.ones(t, s, dtype=torch.bool, device=x.device).triu(s - t + 1), -torch.inf)
        weights = self.dropout(torch.softmax(scores / k**0.5, dim=-1))  # (b, h, t, s)
        context = weights.reshape(b, g, h // g * t, s) @ values  # (b, g, h/g·t, k)
        context = context.view(b, h, t, k).transpose(1, 2).reshape(b, t, self.d_out)  # (b, t, d_out)
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


def build_attention(cfg):
    """块里用哪一种注意力：只有这一处不同，块和模型就可以一字不改地用在别的实验里。"""
    return GroupedQueryAttention(cfg["emb_dim"], cfg["emb_dim"], cfg["drop_rate"], cfg["n_heads"], cfg["n_kv_groups"], cfg["qkv_bias"])


# region 改写 ch04/main: TransformerBlock, GPTModel
class TransformerBlock(nn.Module):
    """Transformer 块，注意力由 build_attention 决定，可以带缓存。（原版详解见 ch04/main/example_05_transformer_block.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.att = build_attention(cfg)  # 改：换成带缓存的注意力；掩码现算，不要 context_length
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
    """GPT，注意力由 build_attention 决定，可以带缓存。（原版详解见 ch04/main/example_06_gpt_model.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.Sequential(*[TransformerBlock(cfg) for _ in range(cfg["n_layers"])])
        self.final_norm = LayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)
        self.current_pos = 0  # 改：缓存里有几个词元，新词元的位置从它数起

    # 改：换一段话之前，每层的缓存和位置一起清零
    def reset_kv_cache(self):
        for block in self.trf_blocks:
            block.att.reset_cache()
        self.current_pos = 0

    def forward(self, in_idx, use_cache=False):  # 改：要不要用缓存
        t = in_idx.shape[1]
        start = self.current_pos if use_cache else 0  # 改：有缓存时，位置接着数
        if start + t > self.pos_emb.num_embeddings:  # 改：连缓存里的一起数
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


def cache_error(model, ids):
    """缓存对不对：一个词元一个词元地带着缓存送进去，与一次送完相比，logits 最多差多少。

    不比生成的词元：两个词元的分数碰巧一样高时，末位的舍入就能让它们换了先后，那不算错。

    参数:
        model (nn.Module): 带缓存的 GPT；结束时，缓存里留着这些词元
        ids (Tensor): 词元编号，(b, t)

    返回:
        float: 最大的差，只应有舍入误差
    """
    model.eval()
    model.reset_kv_cache()
    with torch.no_grad():
        cached = torch.cat([model(token, use_cache=True) for token in ids.split(1, dim=1)], dim=1)  # (b, t, V)
        return (cached - model(ids)).abs().max().item()


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


def pool_heads(weight, num_heads, num_kv_groups, mean):
    """键（或值）的权重从 h 份并成 g 份：每组的头取平均（论文的做法）；mean 是 False 时只留第一个，别的扔掉。"""
    return weight.view(num_kv_groups, num_heads // num_kv_groups, -1, weight.shape[1])[:, : None if mean else 1].mean(dim=1).flatten(0, 1)  # (g·k, d)


def train_once(path, n_kv_groups, pool_to, steps, seed):
    """训练一次；pool_to 不是 None 时，再把训练好的并成 pool_to 份，接着练二十分之一的步数（uptraining）。

    参数:
        path (str): 文本文件
        n_kv_groups (int): 键和值有几份
        pool_to (int 或 None): 训练完再并成几份；None 表示不并
        steps (int): 走几步
        seed (int): 初始权重和批的次序

    返回:
        dict: curve 是 train 的结果；有 pool_to 时，mean、first 是取平均、只留第一个之后接着练的曲线
    """
    train_ids, val_ids, chars = encode_characters(Path(path).read_text(encoding="utf-8"))
    cfg = CONFIG | {"vocab_size": len(chars), "n_kv_groups": n_kv_groups}
    torch.manual_seed(seed)
    model = GPTModel(cfg)
    result = {"curve": train(model, train_ids, val_ids, 32, steps, seed)}
    if pool_to is not None:
        for name, mean in [("mean", True), ("first", False)]:  # 两种并法接着看到的批相同；与训练时的不同，所以种子加 500
            grouped = GPTModel(cfg | {"n_kv_groups": pool_to})
            state = {key: pool_heads(each, cfg["n_heads"], pool_to, mean) if "W_key" in key or "W_value" in key else each for key, each in model.state_dict().items()}
            grouped.load_state_dict(state)
            result[name] = train(grouped, train_ids, val_ids, 32, max(1, steps // 20), seed + 500)
    return result


def decode_step(attention, cache, x, length):
    """缓存里已有 length 个词元时，再走一步。缓存是预先分好的，新的键和值写在末尾：不像 torch.cat，每步把旧的全抄一遍。

    参数:
        attention (GroupedQueryAttention): 注意力
        cache (Tensor): 键和值，(2, b, g, s, k)，s = length + 1
        x (Tensor): 新的词元，(b, 1, d)
        length (int): 已有几个词元

    返回:
        Tensor: (b, 1, d)
    """
    b, h, g, k = len(x), attention.num_heads, attention.num_kv_groups, attention.head_dim
    cache[0, :, :, length] = attention.W_key(x).view(b, g, k)  # (b, g, k)
    cache[1, :, :, length] = attention.W_value(x).view(b, g, k)  # (b, g, k)
    # 只有一个新词元，什么都看得见，不要掩码。同组的 h/g 个头当成 h/g 行查询，一份键只读一次。
    queries = attention.W_query(x).view(b, g, h // g, k)  # (b, g, h/g, k)
    context = nn.functional.scaled_dot_product_attention(queries, cache[0], cache[1])  # (b, g, h/g, k)
    return attention.out_proj(context.reshape(b, 1, h * k))  # (b, 1, d)


def prepare_steps(attentions, length=4096):
    """每层注意力配上预先分好、写满的缓存，返回"再走一步"：名字 → 函数。"""
    return {
        name: partial(decode_step, each, torch.randn(2, 1, each.num_kv_groups, length + 1, each.head_dim), torch.randn(1, 1, each.d_out), length)
        for name, each in attentions.items()
    }


def interleaved(steps, rounds):
    """几种做法轮流各做一次，做许多轮：机器忽快忽慢，大家碰上的一样多。

    参数:
        steps (dict[object, callable]): 名字 → 做一次
        rounds (int): 记几轮；另有三轮热身，不记

    返回:
        dict[object, list]: 名字 → 毫秒的三个四分位数，中间那个是中位数
    """
    torch.set_num_threads(1)  # 一步太短，几个线程互相等的时间比算的还长，别的程序一忙就更乱
    times = {name: [] for name in steps}
    with torch.no_grad():
        for _ in range(rounds + 3):
            for name, step in steps.items():
                start = time.perf_counter()
                step()
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.quantiles(each[3:], n=4) for name, each in times.items()}


def compare_times(quartiles, base):
    """两种做法的用时该怎么说：中间一半完全错开才算数，有重叠就是分不出。"""
    return "更快" if quartiles[2] < base[0] else "更慢" if quartiles[0] > base[2] else "分不出"


def describe(differences, quick):
    """差的平均、区间的半宽和结论，印成一小段；训练太短时只印平均。"""
    return f"{statistics.mean(differences):+.3f}" if quick else "{:+.3f} ± {:.3f} {}".format(*paired_interval(differences), verdict(differences))


def draw(times, curves, gaps, uptrained, levels, quick, path):
    """左上：走一步的用时；右上：从头训练的曲线；左下：减去 MHA 的差；右下：并成几份以后接着练的曲线。

    参数:
        times (dict): 份数 → 毫秒的四分位数
        curves (dict): 份数 → 每个种子的曲线
        gaps (dict): 份数和里程碑 → 每个种子减去 MHA 的差
        uptrained (dict): 并法 → 每个种子的曲线
        levels (dict): 名字 → 平均损失，画成横线
        quick (bool): True 时不画区间
        path (Path): 图片写到哪里
    """
    figure, ((step, loss), (gap, tune)) = plt.subplots(2, 2, figsize=(10.5, 7.4), layout="constrained")
    for row, (low, median, high) in enumerate(times.values()):
        step.bar(row, median, color="tab:blue" if row else "tab:gray")
        step.errorbar(row, median, [[median - low], [high - median]], color="black", capsize=5)
    step.set_xticks(range(len(times)), [f"{each} 份" for each in times])
    step.set(title="缓存里有 4096 个词元，一层走一步", xlabel="键和值（短线：中间一半）", ylabel="毫秒")
    for axis, lines, title in [(loss, {f"{each} 份": curve for each, curve in curves.items()}, "从头训练"), (tune, uptrained, "训练好的 MHA 并好，接着练")]:
        for row, (label, several) in enumerate(lines.items()):
            for i, curve in enumerate(several):
                axis.plot(*zip(*curve), color=f"C{row}", linewidth=0.8, alpha=0.6, label=None if i else label)
        axis.set(xlabel="训练步数", ylabel="验证损失", title=f"{title}（每条线一个种子）")
    for style, (label, level) in zip((":", "--"), levels.items()):
        tune.axhline(level, color="0.4", linestyle=style, label=label)
    loss.legend()
    tune.legend()
    draw_differences(gap, gaps, quick)
    gap.set(title="减去 MHA 的", xlabel="损失的差（往左是更低）")
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
    """同一个小模型，只改键和值的份数，比缓存、速度和损失；再把训练好的多头模型并成几份，接着练。"""
    parser = argparse.ArgumentParser(description="实验　分组查询注意力：省多少缓存，亏多少损失")
    parser.add_argument("--groups", type=int, nargs="+", default=[2, 1], help="键和值的份数，可以给几个，每个都要整除 8（默认：2 1）")
    parser.add_argument("--steps", type=int, default=400, help="每个模型训练几步（默认：400）")
    parser.add_argument("--seeds", type=int, default=8, help="用几个种子，5 到 10（默认：8）")
    parser.add_argument("--seed", type=int, default=123, help="第一个种子；几个种子是它乘 1000 再加 0、1、2……（默认：123）")
    parser.add_argument("--quick", action="store_true", help="两个种子，每次只训练 5 步：看流程，不下结论")
    args = parser.parse_args()
    for name, low, high in [("steps", 1, 100000), ("seeds", 5, 10), ("seed", 0, 10**9)]:
        if not low <= getattr(args, name) <= high:
            parser.error(f"--{name} 应在 {low} 到 {high} 之间，不能是 {getattr(args, name)}")
    if wrong := [each for each in args.groups if each < 1 or CONFIG["n_heads"] % each]:
        parser.error(f"{CONFIG['n_heads']} 个头不能平均分成 {wrong[0]} 组")
    steps, heads = min(args.steps, 5) if args.quick else args.steps, CONFIG["n_heads"]
    seeds = [args.seed * 1000 + i for i in range(2 if args.quick else args.seeds)]
    others = list(dict.fromkeys(args.groups))
    target = others[0]  # 训练好的 MHA 并成第一个给的份数
    path = find_data("the-verdict.txt", "story-en.txt")
    train_ids, val_ids, chars = encode_characters(path.read_text(encoding="utf-8"))
    print(f"数据　{path}　{len(train_ids) + len(val_ids):,} 个字符，{len(chars)} 种；只看前一个字符、数数，损失 {bigram_loss(train_ids, val_ids, len(chars)):.3f}")
    print(f"模型　2 层，d = 64，{heads} 个查询头，上下文 32；{len(seeds)} 个种子，各训练 {steps} 步")

    cases = [(str(path), each, target if each == heads else None, steps, seed) for each in dict.fromkeys([heads, *others]) for seed in seeds]
    results = side_by_side(train_once, cases, OUTPUTS / "exp_gqa", workers=1 if args.quick else None)
    curves = {each: [results[case]["curve"] for case in cases if case[1] == each] for each in [heads, *others]}
    pooled = {how: [results[case][how] for case in cases if case[1] == heads] for how in ("mean", "first")}
    times = interleaved(prepare_steps({each: GroupedQueryAttention(heads * 64, heads * 64, 0.0, heads, each) for each in curves}), 5 if args.quick else 41)  # 头宽 64，与 GPT-2 相同

    print("\n① 缓存、参数、走一步\n键和值几份　每层注意力参数　写满的缓存　公式算的　4096 个词元后走一步（毫秒，中位数和中间一半）")
    exact = same = True
    for each in curves:
        model = GPTModel(CONFIG | {"vocab_size": len(chars), "n_kv_groups": each})
        same &= cache_error(model, val_ids[None, :32]) < 1e-3  # 写满了上下文，接着量真的缓存
        measured = sum(block.att.cache_k.nbytes + block.att.cache_v.nbytes for block in model.trf_blocks)
        formula = calc_kv_bytes_total(1, 32, 64, heads, each, 2, 4)
        exact &= measured == formula
        low, median, high = times[each]
        says = "" if args.quick or each == heads else f"，比 MHA {compare_times(times[each], times[heads])}（{median / times[heads][1]:.2f} 倍）"
        print(f"{each:6}{sum(p.numel() for p in model.trf_blocks[0].att.parameters()):18,}{measured:13,} B{formula:9,} B{median:12.2f}（{low:.2f}–{high:.2f}）{says}")
    mha, gqa = (calc_kv_bytes_total(1, 32768, 4096, 32, each, 32, 2) / 1e9 for each in (32, 8))
    print(f"放大到书中的配置（32 层，d = 4096，32 个头，32768 个词元，bfloat16）：MHA {mha:.2f} GB，8 份 {gqa:.2f} GB，省 {1 - gqa / mha:.0%}")

    print(f"\n② 从头训练，减去 MHA（{heads} 份）的，同一个种子配对；± 是 99% 区间的半宽" + ("\n训练太短：看流程，不下结论" if args.quick else "，比它小的差，这里看不见"))
    gaps = {}
    for each in others:
        early, low = ([milestones(a)[which] - milestones(b)[which] for a, b in zip(curves[each], curves[heads])] for which in (0, 1))
        gaps |= {f"{each} 份，四分之一时": early, f"{each} 份，最低的": low}
        print(f"  {each} 份　走到四分之一时 {describe(early, args.quick)}　最低的 {describe(low, args.quick)}")

    few = pooled["mean"][0][-1][0]
    end = {how: [curve[-1][1] for curve in each] for how, each in pooled.items()}
    scratch = [curve[1][1] for curve in curves[target]]  # 曲线每二十分之一记一次，第一次正好是这么多步
    print(f"\n③ 训练好的 MHA 并成 {target} 份，再练 {few} 步（{few / steps:.0%}）：平均损失")
    levels = {f"{target} 份，从头训练 {few} 步": statistics.mean(scratch), f"{target} 份，从头训练 {steps} 步": statistics.mean(curve[-1][1] for curve in curves[target])}
    for title, loss in ({"取平均": statistics.mean(end["mean"]), "只留第一个头": statistics.mean(end["first"])} | levels).items():
        print(f"  {title}　{loss:.3f}")
    for name, losses in [("只留第一个", end["first"]), ("从头训练", scratch)]:
        print(f"  同样 {few} 步，{name}减去取平均　{describe([a - b for a, b in zip(losses, end['mean'])], args.quick)}")
    if not args.quick:
        mean_curve = [(point[0][0], statistics.mean(loss for _, loss in point)) for point in zip(*curves[target])]
        reached = next((step for step, loss in mean_curve if loss <= statistics.mean(end["mean"])), None)
        print(f"所以：取平均再练 {few} 步到的损失，从头训练要" + (f"走 {reached} 步。" if reached else f"不止 {steps} 步。"))
    draw(times, curves, gaps, {"取平均": pooled["mean"], "只留第一个头": pooled["first"]}, levels, args.quick, OUTPUTS / "gqa.png")
    print(f"图片已写到 {OUTPUTS / 'gqa.png'}")

    print("\n这个数字对吗？")
    torch.manual_seed(args.seed)
    plain = MultiHeadAttention(64, 64, 64, 0.0, heads)
    torch.manual_seed(args.seed)
    grouped = GroupedQueryAttention(64, 64, 0.0, heads, heads)
    x = torch.randn(2, 16, 64)  # (b, t, d)
    confirm("份数等于头数时，与第 3 章的 MultiHeadAttention 输出相同", torch.allclose(plain(x), grouped(x), atol=1e-6), "建各层的次序变了，或者掩码错了")
    grouped = GroupedQueryAttention(64, 64, 0.0, heads, target)
    rows = torch.arange(target * grouped.head_dim).view(target, -1).repeat_interleave(heads // target, dim=0).flatten()  # (d,)
    copied = {f"{name}.weight": getattr(grouped, name).weight[rows] for name in ("W_key", "W_value")}
    plain.load_state_dict(grouped.state_dict() | copied, strict=False)
    confirm(f"{target} 份的 GQA，等于把键和值的权重复制给同组各头的 MHA", torch.allclose(plain(x), grouped(x), atol=1e-6), "头认错了组：要的是 [1, 1, 2, 2]，不是 [1, 2, 1, 2]")
    back = all(torch.allclose(pool_heads(weight, heads, target, mean), getattr(grouped, name[:-7]).weight) for name, weight in copied.items() for mean in (True, False))
    confirm("同组各头的权重本来就相同时，取平均、只留第一个，都变回原来那一份", back, "平均错了维：要平均的是同组的头")
    cache = torch.randn(2, 2, target, 17, grouped.head_dim)
    grouped.cache_k, grouped.cache_v = cache[:, :, :, :16].clone()
    confirm("预先分好的缓存走一步，与拼接的缓存走一步相同", torch.allclose(grouped(x[:, :1], use_cache=True), decode_step(grouped, cache, x[:, :1], 16), atol=1e-5), "新的键和值写错了位置")
    confirm("实测的缓存与公式一个字节不差", exact, "存的是复制之后的 h 份，那就一点没省")
    confirm("有缓存与没有缓存，logits 相同（最多差千分之一）", same, "位置没有接着数，或掩码没有右移")
    confirm(f"书中的配置：{mha:.2f} GB 和 {gqa:.2f} GB，与原书仓库的 17.18 和 4.29 相同", (f"{mha:.2f}", f"{gqa:.2f}") == ("17.18", "4.29"), "忘了乘 2（键和值各一），或把 n_kv_groups 当成了份数")


if __name__ == "__main__":
    main()
