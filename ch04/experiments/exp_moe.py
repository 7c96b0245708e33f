"""第 4 章 · 实验　混合专家（MoE）：算得一样多，参数多几倍，损失能低多少？

问题：　把前馈网络换成 8 个小的（专家），每个词元只用其中 2 个：参数是原来的 4 倍，算得却一样多。验证损失会低吗？
先猜：　与算得一样多的密集网络比，谁低？与参数一样多的比呢？（先想 10 秒，再运行）
看点：　① 右边两幅：同一个种子配对相减，区间整个在 0 的左边才叫更低，跨过 0 就是分不出；"学得快"和"最后低"分开看。
        ② 参数同样多的密集网络要多算 4 倍，它是 MoE 追赶的目标。　③ 一层前向的用时：算得一样多，不等于一样快。
动手改：1. --experts 1 --top-k 1：三个网络在数学上是同一个，所以都应当是「分不出」；分得出，就是比的办法错了。
        2. --top-k 1，再把两处 "norm_topk_prob": top_k > 1 都改成 "norm_topk_prob": True（只在选中的那一个里 softmax）：
           自查「路由收得到梯度」变成 ✗；不看这一条，程序一切正常。
        3. 把 MoEFeedForward 里的 * probs[chosen][:, None] 去掉：程序照样跑，「按定义逐个词元算」和「路由收得到梯度」变成 ✗。

运行：
    python ch04/experiments/exp_moe.py               # 图片写到 ch04/outputs/
    python ch04/experiments/exp_moe.py --quick
    约 70 秒，0.8 GB（2 核 CPU）；训练过的存着，再运行就立刻出结果
    怎样让专家忙得更匀、装不下怎么办，见 exp_moe_balance.py

形状记号：b 批大小　t 序列长度　n = b·t 词元总数　d 嵌入维度　e 专家总数　j 每个词元用几个专家　m 分到某个专家的词元数
　　　　　V 词表大小（这里词元就是字符）
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
from multiprocessing import get_context
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
CONFIG = {"context_length": 32, "emb_dim": 64, "n_heads": 4, "n_layers": 2, "drop_rate": 0.0, "qkv_bias": False}
SMALL, LARGE, MOE = "密集，计算量相同", "密集，参数量相同", "MoE"


def estimate_params_and_hidden(emb_dim, hidden_dim, num_experts, top_k, match_dense=False):
    """一层 MoE 有多少参数，其中一个词元用得到的有多少。

    参数:
        emb_dim (int): 嵌入维度 d
        hidden_dim (int): 密集前馈网络的中间维度
        num_experts (int): 专家总数 e
        top_k (int): 每个词元用几个
        match_dense (bool): True 时把每个专家缩小，让 MoE 的总参数约等于密集的；False 时每个专家与密集的一样大

    返回:
        dict[str, int]: dense_params、per_expert_params、router、moe_total、active（一个词元用得到的）、moe_hidden_dim
    """
    dense, router = 3 * emb_dim * hidden_dim, emb_dim * num_experts  # SwiGLU 有三个矩阵：fc1、fc2、fc3
    moe_hidden = round((dense - router) / (num_experts * 3 * emb_dim)) if match_dense else hidden_dim
    expert = 3 * emb_dim * moe_hidden
    total, active = num_experts * expert + router, top_k * expert + router
    return {"dense_params": dense, "per_expert_params": expert, "router": router, "moe_total": total, "active": active, "moe_hidden_dim": moe_hidden}


class FeedForward(nn.Module):
    """SwiGLU 前馈网络：中间那一层分成两路，一路过 SiLU 当闸门，乘在另一路上。

    与 gpt.py 的前馈网络同名不同形（那里是两个矩阵加 GELU），因为原书的 MoE 和如今的大模型都用这一种。

    参数:
        cfg (dict): 模型配置，用到 emb_dim 和 hidden_dim

    形状:
        输入 (…, d) → 输出 (…, d)

    出处: 原书仓库 ch04/07_moe；Shazeer，GLU Variants Improve Transformer，2020
    """

    def __init__(self, cfg):
        super().__init__()
        self.fc1 = nn.Linear(cfg["emb_dim"], cfg["hidden_dim"], bias=False)
        self.fc2 = nn.Linear(cfg["emb_dim"], cfg["hidden_dim"], bias=False)
        self.fc3 = nn.Linear(cfg["hidden_dim"], cfg["emb_dim"], bias=False)

    def forward(self, x):
        """前向传播：fc3(SiLU(fc1(x)) · fc2(x))。

        参数:
            x (Tensor): (…, d)

        返回:
            Tensor: (…, d)
        """
        return self.fc3(nn.functional.silu(self.fc1(x)) * self.fc2(x))


class MoEFeedForward(nn.Module):
    """混合专家（mixture of experts）：路由给每个词元挑 j 个专家，只算这几个，按概率加起来。

    参数:
        cfg (dict): 模型配置，用到 emb_dim、hidden_dim（每个专家的中间维度）、num_experts、num_experts_per_tok；
            norm_topk_prob 没写就是 True（原书）：概率只在选中的几个之间分；False 是全部专家的 softmax 里选中的那几份（Switch）

    形状:
        输入 (b, t, d) → 输出 (b, t, d)

    异常:
        ValueError: num_experts_per_tok 不在 1 到 num_experts 之间

    出处: 原书仓库 ch04/07_moe；Fedus 等，Switch Transformer，2021（均衡损失）
    """

    def __init__(self, cfg):
        super().__init__()
        self.num_experts, self.num_experts_per_tok = cfg["num_experts"], cfg["num_experts_per_tok"]
        if not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise ValueError(f"一共 {self.num_experts} 个专家，每个词元不能用 {self.num_experts_per_tok} 个")
        self.norm_topk_prob = cfg.get("norm_topk_prob", True)
        emb_dim, hidden_dim = cfg["emb_dim"], cfg["hidden_dim"]
        self.gate = nn.Linear(emb_dim, self.num_experts, bias=False)  # 路由（router）：给每个专家打一分
        self.fc1 = nn.ModuleList([nn.Linear(emb_dim, hidden_dim, bias=False) for _ in range(self.num_experts)])
        self.fc2 = nn.ModuleList([nn.Linear(emb_dim, hidden_dim, bias=False) for _ in range(self.num_experts)])
        self.fc3 = nn.ModuleList([nn.Linear(hidden_dim, emb_dim, bias=False) for _ in range(self.num_experts)])
        self.load = self.balance_loss = self.last_choice = None  # 最近一次前向的统计，均衡损失和画图用

    def forward(self, x):
        """前向传播。

        参数:
            x (Tensor): (b, t, d)

        返回:
            Tensor: (b, t, d)
        """
        flat = x.flatten(0, 1)  # (n, d)　路由只看词元自己，不分样本
        scores = self.gate(flat)  # (n, e)
        everyone = torch.softmax(scores, dim=-1)  # (n, e)
        top_scores, top_experts = scores.topk(self.num_experts_per_tok, dim=-1)  # (n, j)，(n, j)
        # 陷阱：只选一个（j = 1）时，一个数的 softmax 永远是 1，路由收到的梯度正好是 0，练多久都不动；要取 everyone 里的那一份。
        probs = torch.softmax(top_scores, dim=-1) if self.norm_topk_prob else everyone.gather(1, top_experts)  # (n, j)
        out = torch.zeros_like(flat)  # (n, d)
        for expert in range(self.num_experts):
            chosen = top_experts == expert  # (n, j)
            rows = chosen.any(dim=-1).nonzero().flatten()  # (m,)　哪些词元归它
            if len(rows) == 0:
                continue  # 没有词元选它：不算，也就没有梯度，这正是"饿死"的开始
            inputs = flat[rows]  # (m, d)
            hidden = nn.functional.silu(self.fc1[expert](inputs)) * self.fc2[expert](inputs)  # (m, hidden)
            # 乘概率不只是加权：topk 选谁不可导，路由的梯度全靠这一乘传回去。
            out = out.index_add(0, rows, self.fc3[expert](hidden) * probs[chosen][:, None])  # (n, d)

        # 均衡损失（load balancing loss）：e · Σ 活的占比 · 平均概率。占比不可导，概率可导：忙的专家，概率被往下压。
        # 完全平均时是 1；每个词元都挑同样的 j 个时，每个占 1 / j，接近 e / j。
        self.load = torch.bincount(top_experts.flatten(), minlength=self.num_experts) / top_experts.numel()  # (e,)
        self.balance_loss = self.num_experts * (self.load * everyone.mean(dim=0)).sum()
        self.last_choice = top_experts.detach()
        return out.view_as(x)  # (b, t, d)


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


# region 沿用 ch04/main: LayerNorm, TransformerBlock, GPTModel
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


def told(differences, quick):
    """几个种子的差，写成一句：平均 ± 99% 区间的半宽，再加结论；训练太短就不下结论。

    参数:
        differences (list[float]): 每个种子一个差
        quick (bool): 训练太短

    返回:
        str: 如 "-0.120 ± 0.031　更低"
    """
    if quick:
        return f"{statistics.mean(differences):+.3f}　训练太短：看流程，不下结论"
    return "{:+.3f} ± {:.3f}　".format(*paired_interval(differences)) + verdict(differences)


def one_by_one(moe, x):
    """MoE 的另一种算法，完全照定义：一个词元一个词元地，把它的几个专家各算一遍再加起来。慢，只用来对答案。

    参数:
        moe (MoEFeedForward): 混合专家
        x (Tensor): (b, t, d)

    返回:
        Tensor: (b, t, d)
    """
    rows = []
    for token in x.flatten(0, 1):
        scores = moe.gate(token)  # (e,)
        experts = scores.argsort(descending=True)[: moe.num_experts_per_tok].tolist()
        shares = torch.softmax(scores[experts], dim=0) if moe.norm_topk_prob else torch.softmax(scores, dim=0)[experts]  # (j,)
        rows.append(sum(share * moe.fc3[i](nn.functional.silu(moe.fc1[i](token)) * moe.fc2[i](token)) for share, i in zip(shares, experts)))
    return torch.stack(rows).view_as(x)  # (b, t, d)


def train_once(path, experts, top_k, hidden, balance, steps, seed):
    """训练一次：前馈网络是哪一种、种子由参数定，其余都相同。

    参数:
        path (str): 文本文件
        experts (int): 几个专家；0 表示密集的
        top_k (int): 每个词元用几个专家
        hidden (int): 前馈网络（或每个专家）的中间维度
        balance (float): 均衡损失的权重，0 表示不加
        steps (int): 走几步
        seed (int): 初始权重和批的次序

    返回:
        list: train 的结果
    """
    train_ids, val_ids, chars = encode_characters(Path(path).read_text(encoding="utf-8"))
    cfg = CONFIG | {"vocab_size": len(chars), "num_experts": experts, "num_experts_per_tok": top_k, "norm_topk_prob": top_k > 1, "hidden_dim": hidden}
    torch.manual_seed(seed)
    model = GPTModel(cfg)  # 这里的 FeedForward 是上面的 SwiGLU，所以密集的不必再换
    for block in model.trf_blocks if experts else []:
        block.ff = MoEFeedForward(cfg)
    return train(model, train_ids, val_ids, 32, steps, seed, lambda: balance * sum(block.ff.balance_loss for block in model.trf_blocks) if experts else 0.0)


def draw(curves, differences, bigram, quick, path):
    """三幅图：训练曲线；走到四分之一时的差；最低的差。

    参数:
        curves (dict): 名字 → 每个种子的曲线
        differences (dict): 标题 → （名字 → 每个种子的差）
        bigram (float): 只看前一个字符的损失
        quick (bool): True 时不画区间
        path (Path): 图片写到哪里
    """
    figure, (loss, *panels) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for number, (name, several) in enumerate(curves.items()):
        for curve in several:
            loss.plot(*zip(*curve[1:]), color=f"C{number}", linewidth=0.8, alpha=0.6, label=name if curve is several[0] else None)
    loss.axhline(bigram, color="0.5", linestyle="--", label="只看前一个字符，数数")
    loss.set_xlabel("训练步数")
    loss.set_ylabel("验证损失")
    loss.legend()
    for axis, (title, values) in zip(panels, differences.items()):
        draw_differences(axis, {name.replace("，", "\n"): each for name, each in values.items()}, quick)
        axis.locator_params(axis="x", nbins=5)
        axis.set_xlabel("损失的差（往左是更低）")
        axis.set_title(f"{title.strip('　')}，减去「{SMALL}」")
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
    """同一个小模型，只换前馈网络，每种训练几个种子：比损失和用时。"""
    parser = argparse.ArgumentParser(description="实验　混合专家：算得一样多，参数多几倍")
    parser.add_argument("--experts", type=int, default=8, help="专家总数（默认：8）")
    parser.add_argument("--top-k", type=int, default=2, help="每个词元用几个专家，不能超过总数（默认：2）")
    parser.add_argument("--balance", type=float, default=0.01, help="均衡损失的权重（默认：0.01，与 Switch Transformer 相同）")
    parser.add_argument("--steps", type=int, default=300, help="每次训练几步（默认：300）")
    parser.add_argument("--seeds", type=int, default=8, help="每种训练几个种子，5 到 10（默认：8）")
    parser.add_argument("--seed", type=int, default=123, help="第一个种子；各个种子是它乘 1000 再加 0、1、2……（默认：123）")
    parser.add_argument("--quick", action="store_true", help="两个种子，各训练 5 步：看流程，不下结论")
    args = parser.parse_args()
    for name, low, high in [("experts", 1, 64), ("top_k", 1, args.experts), ("balance", 0, 100), ("steps", 1, 100000), ("seeds", 5, 10), ("seed", 0, 2**50)]:
        if not low <= getattr(args, name) <= high:
            parser.error(f"--{name.replace('_', '-')} 应在 {low} 到 {high} 之间，不能是 {getattr(args, name)}")
    experts, top_k, d, hidden, quick = args.experts, args.top_k, 64, 32, args.quick
    steps, seeds = 5 if quick else args.steps, [args.seed * 1000 + i for i in range(2 if quick else args.seeds)]
    path = find_data("the-verdict.txt", "story-en.txt")
    train_ids, val_ids, chars = encode_characters(path.read_text(encoding="utf-8"))
    bigram = bigram_loss(train_ids, val_ids, len(chars))
    print(f"数据　{path}　{len(train_ids) + len(val_ids):,} 个字符，{len(chars)} 种")
    print(f"模型　2 层，d = {d}，4 个头，上下文 32；{experts} 个专家，每个中间 {hidden} 维，每个词元用 {top_k} 个；{len(seeds)} 个种子，各 {steps} 步")

    variants = {SMALL: (0, top_k, hidden * top_k, 0.0), LARGE: (0, top_k, hidden * experts, 0.0), MOE: (experts, top_k, hidden, args.balance)}
    cases = [(str(path), *variant, steps, seed) for seed in seeds for variant in variants.values()]
    done = side_by_side(train_once, cases, OUTPUTS / "exp_moe", workers=1 if quick else None)
    curves = {name: [done[(str(path), *variant, steps, seed)] for seed in seeds] for name, variant in variants.items()}

    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # 矩阵都很小；别的程序占着核时，线程互相等，反而慢好几倍
    cfg = {"emb_dim": d, "hidden_dim": hidden, "num_experts": experts, "num_experts_per_tok": top_k, "norm_topk_prob": top_k > 1}
    layers = {SMALL: FeedForward(cfg | {"hidden_dim": hidden * top_k}), LARGE: FeedForward(cfg | {"hidden_dim": hidden * experts}), MOE: MoEFeedForward(cfg)}
    x, estimate = torch.randn(16, 32, d), estimate_params_and_hidden(d, hidden, experts, top_k)
    with torch.no_grad():
        times = take_turns({name: lambda layer=layer: layer(x) for name, layer in layers.items()}, 40)
    print("\n前馈网络　　　　　每层参数　一个词元用到　一层前向几毫秒（中间一半的范围）")
    for name, layer in layers.items():
        count = sum(p.numel() for p in layer.parameters())
        low, middle, high = [1000 * each for each in quartiles(times[name])]
        print(name + " " * (16 - len(name.encode("gbk"))) + f"{count:10,}{estimate['active'] if name == 'MoE' else count:12,}{middle:12.2f}（{low:.2f} 到 {high:.2f}）")
    print(f"MoE 的用时是「{SMALL}」的 {compare(times['MoE'], times[SMALL])}：挑词元、分 {experts} 次算小矩阵、放回去，都要时间。")

    scores = {name: [milestones(curve) for curve in several] for name, several in curves.items()}
    short = quick or statistics.mean(low for _, low in scores[SMALL]) > bigram  # 还不如数数：没练够
    print(f"\n验证损失（只看前一个字符、数数，是 {bigram:.3f}）　最低的，{len(seeds)} 个种子的平均：")
    print("　".join(f"{name} {statistics.mean(low for _, low in several):.3f}" for name, several in scores.items()))
    print("减去同一个种子的「" + SMALL + "」（± 是 99% 区间的半宽，比它小的差，这个实验看不出）：")
    differences = {}
    for which, title in enumerate(["走到四分之一时", "最低的　　　　"]):
        differences[title] = {name: [a[which] - b[which] for a, b in zip(scores[name], scores[SMALL])] for name in (LARGE, MOE)}
        for name, each in differences[title].items():
            print(f"  {title}　{name}{' ' * (18 - len(name.encode('gbk')))}{told(each, short)}")  # GBK 里汉字占两个字节，与终端里的宽度一样

    book = estimate_params_and_hidden(7168, 14336, 8, 2, match_dense=True)
    print("\n书中的配置（d = 7168，中间 14336 维，8 个专家用 2 个，总参数与密集的相当，bfloat16）：")
    print(f"  密集 {book['dense_params']:,} 个（{book['dense_params'] * 2 / 1e9:.2f} GB）；每个专家中间 {book['moe_hidden_dim']} 维，{book['per_expert_params']:,} 个；路由 {book['router']:,} 个")
    print(f"  MoE 共 {book['moe_total']:,} 个（{book['moe_total'] * 2 / 1e9:.2f} GB），一个词元用到 {book['active']:,} 个（{book['active'] * 2 / 1e9:.2f} GB）")
    draw(curves, differences, bigram, short, OUTPUTS / "moe.png")
    print(f"图片已写到 {OUTPUTS / 'moe.png'}")

    print("\n这个数字对吗？")
    single, moe = MoEFeedForward(cfg | {"num_experts": 1, "num_experts_per_tok": 1}), layers["MoE"]
    layer = FeedForward(cfg)
    layer.load_state_dict({key.replace(".0.", "."): value for key, value in single.state_dict().items() if key != "gate.weight"})
    confirm("MoE 一个专家，与普通的前馈网络输出相同", torch.allclose(single(x), layer(x), atol=1e-6), "概率没有在选中的几个之间归一")
    confirm("成批地算，与按定义逐个词元算相同", torch.allclose(moe(x[:2, :8]), one_by_one(moe, x[:2, :8]), atol=1e-5), "概率与专家没有对上号，或没有乘概率")
    moe(x).square().sum().backward()
    router = 0.0 if moe.gate.weight.grad is None else moe.gate.weight.grad.norm().item()
    confirm(f"路由收得到梯度：{router:.3g}", experts == 1 or router > 1e-3, "只在选中的一个之间 softmax，概率永远是 1；或者没有乘概率")
    confirm(f"参数的估算与数出来的相同：{estimate['moe_total']:,} 个", estimate["moe_total"] == sum(p.numel() for p in moe.parameters()), "漏了路由，或 SwiGLU 少数了一个矩阵")
    with torch.no_grad():
        moe.gate.weight.copy_((torch.arange(experts) < top_k)[:, None] * 9.0)
        moe(torch.ones(1, 8, d))  # 每个词元都挑前 j 个专家
    confirm(f"最不匀时，均衡损失是 e / j = {experts / top_k:g}", abs(moe.balance_loss.item() - experts / top_k) < 1e-3, "占比是除以 词元数 × j 的，一个专家至多占 1 / j")
    confirm(
        "书中的配置：308,281,344、38,535,168、57,344、308,338,688、77,127,680，1792 维，与原书仓库相同",
        list(book.values()) == [308281344, 38535168, 57344, 308338688, 77127680, 1792],
        "SwiGLU 少数了一个矩阵，或缩小之后的维度没有四舍五入",
    )


if __name__ == "__main__":
    main()
