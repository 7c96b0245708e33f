"""第 4 章 · 实验　混合专家的路由：怎样让每个专家都有活干？装不下的词元怎么办？

问题：　不加干预，最忙的专家比平均忙几倍？加一项均衡损失，或者给每个专家一个偏置，谁更匀，损失谁低？
先猜：　每个专家只收平均的 1.25 倍，多了就扔：不加干预时要扔掉几成词元？（先想 10 秒，再运行）
看点：　① 图的上排：不管，有的专家几乎没有活，参数白占着内存；另两种，颜色匀了。　② 扔掉的比例：越匀，扔得越少。
        ③ 两种均衡办法，损失的差是更低、更高，还是分不出。　④ 打印的「各专家偏爱的字符」：没有人教，它们自己分了工。
        ⑤ 只用一个专家时的陷阱：路由的梯度正好是 0，一步也没有学，程序却一切正常。
动手改：1. --balance 1：均衡损失重了 100 倍；最忙的专家还忙几倍？损失变高了吗？
        2. --rate 0：偏置不动，「偏置」与「不管」逐位相同，差全是 0。
        3. 把 (everyone + self.bias) 改成 everyone：偏置照样在调，却没有人看，也与「不管」逐位相同。

运行：
    python ch04/experiments/exp_moe_balance.py               # 图片写到 ch04/outputs/
    python ch04/experiments/exp_moe_balance.py --quick
    约 65 秒，0.8 GB（2 核 CPU）；训练过的存着，再运行就立刻出结果

形状记号：b 批大小　t 序列长度　n = b·t 词元总数　d 嵌入维度　e 专家总数　j 每个词元用几个专家　m 分到某个专家的词元数
　　　　　u 训练了几步　l 层数　V 词表大小（这里词元就是字符）
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
CONFIG = {"context_length": 32, "emb_dim": 64, "n_heads": 4, "n_layers": 2, "drop_rate": 0.0, "qkv_bias": False}
NONE, LOSS, BIAS, SHARED = "不管", "均衡损失", "偏置", "均衡损失，1 个共享"
FACTORS = [1.0, 1.25, 2.0]  # 容量：每个专家最多收平均的几倍


# region 沿用 ch04/experiments/exp_moe.py: FeedForward
class FeedForward(nn.Module):
    """SwiGLU 前馈网络：中间那一层分成两路，一路过 SiLU 当闸门，乘在另一路上。（详解见 ch04/experiments/exp_moe.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.fc1 = nn.Linear(cfg["emb_dim"], cfg["hidden_dim"], bias=False)
        self.fc2 = nn.Linear(cfg["emb_dim"], cfg["hidden_dim"], bias=False)
        self.fc3 = nn.Linear(cfg["hidden_dim"], cfg["emb_dim"], bias=False)

    def forward(self, x):
        return self.fc3(nn.functional.silu(self.fc1(x)) * self.fc2(x))


# endregion


# region 改写 ch04/experiments/exp_moe.py: MoEFeedForward
class MoEFeedForward(nn.Module):
    """混合专家，另有挑人用的偏置、容量、共享专家。（原版详解见 ch04/experiments/exp_moe.py）"""

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
        self.load = self.balance_loss = self.last_choice = None
        self.register_buffer("bias", torch.zeros(self.num_experts))  # 改：只在挑专家时加上；不是参数，由负载来调，见 balancing
        self.shared = FeedForward(cfg) if cfg["shared"] else None  # 改：共享专家，每个词元都用
        self.capacity_factor, self.dropped = None, 0.0  # 改：每个专家最多收平均的几倍，None 不限；最近一次扔掉了几成

    def forward(self, x):
        flat = x.flatten(0, 1)  # (n, d)　路由只看词元自己，不分样本
        scores = self.gate(flat)  # (n, e)
        everyone = torch.softmax(scores, dim=-1)  # (n, e)
        top_experts = (everyone + self.bias).topk(self.num_experts_per_tok, dim=-1).indices  # (n, j)　改：挑的时候加偏置
        top_scores = scores.gather(1, top_experts)  # (n, j)　改：乘在输出上的概率不加偏置
        probs = torch.softmax(top_scores, dim=-1) if self.norm_topk_prob else everyone.gather(1, top_experts)  # (n, j)
        out = torch.zeros_like(flat)  # (n, d)
        # 改：容量。真的系统里，每个专家的输入是一块事先分好大小的内存，装不下的词元就不算，只走残差。
        capacity, taken = len(flat) if self.capacity_factor is None else int(self.capacity_factor * top_experts.numel() / self.num_experts), 0
        for expert in range(self.num_experts):
            chosen = top_experts == expert  # (n, j)
            rows = chosen.any(dim=-1).nonzero().flatten()[:capacity]  # (m,)　改：先到先得
            taken += len(rows)  # 改：真的算了的
            if len(rows) == 0:
                continue
            inputs = flat[rows]  # (m, d)
            hidden = nn.functional.silu(self.fc1[expert](inputs)) * self.fc2[expert](inputs)  # (m, hidden)
            out = out.index_add(0, rows, self.fc3[expert](hidden) * probs[chosen][: len(rows), None])  # (n, d)　改：装不下的没有

        self.load = torch.bincount(top_experts.flatten(), minlength=self.num_experts) / top_experts.numel()  # (e,)
        self.balance_loss = self.num_experts * (self.load * everyone.mean(dim=0)).sum()
        self.last_choice = top_experts.detach()
        self.dropped = 1 - taken / top_experts.numel()  # 改：扔掉的比例
        if self.shared is not None:  # 改：共享专家，不归路由管
            out = out + self.shared(flat)  # (n, d)　改：同上
        return out.view_as(x)  # (b, t, d)


# endregion


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


# region 沿用 ch04/experiments/exp_moe.py: told
def told(differences, quick):
    """几个种子的差，写成一句：平均 ± 99% 区间的半宽，再加结论；训练太短就不下结论。（详解见 ch04/experiments/exp_moe.py）"""
    if quick:
        return f"{statistics.mean(differences):+.3f}　训练太短：看流程，不下结论"
    return "{:+.3f} ± {:.3f}　".format(*paired_interval(differences)) + verdict(differences)


# endregion


def build(vocab_size, experts, top_k, norm_topk_prob, shared, seed):
    """一个还没训练的小模型，前馈网络都是 MoE。

    参数:
        vocab_size, experts, top_k (int): 词表大小；专家总数 e；每个词元用几个
        norm_topk_prob (bool): 见 exp_moe.py；False 是全部专家的 softmax
        shared (bool): 再加一个共享专家
        seed (int): 初始权重

    返回:
        GPTModel: 2 层，d = 64，每个专家中间 32 维
    """
    torch.manual_seed(seed)
    cfg = CONFIG | {"vocab_size": vocab_size, "num_experts": experts, "num_experts_per_tok": top_k, "norm_topk_prob": norm_topk_prob, "shared": shared, "hidden_dim": 32}
    model = GPTModel(cfg)
    for block in model.trf_blocks:
        block.ff = MoEFeedForward(cfg)
    return model


def balancing(model, balance, rate, loads):
    """每一步前向之后做的事：记下负载；按负载调偏置；算出均衡损失。

    参数:
        model (GPTModel): MoE 模型
        balance (float): 均衡损失的权重，0 表示不加
        rate (float): 偏置每步动多少，0 表示不动
        loads (list): 负载记到这里，每一步一项，l × e

    返回:
        callable: 交给 train 的 extra_loss
    """

    def extra_loss():
        layers = [block.ff for block in model.trf_blocks]
        loads.append([[round(each, 4) for each in layer.load.tolist()] for layer in layers])
        for layer in layers:
            # DeepSeek-V3 的办法：比平均忙的，偏置减一点；闲的，加一点。不动损失，就没有一股与预测下一个词元相争的梯度。
            layer.bias += rate * torch.sign(1 / layer.num_experts - layer.load)  # (e,)
        return balance * sum(layer.balance_loss for layer in layers)

    return extra_loss


def capacity_losses(model, ids):
    """限了容量，要扔掉几成，损失变成多少：把验证集当一批，一次算完。

    参数:
        model (GPTModel): 训练过的 MoE 模型
        ids (Tensor): 验证集的编号，一维

    返回:
        list[list[float]]: 不限和 FACTORS 里的每一种，各是扔掉的比例（各层平均）和验证损失
    """
    result = []
    for factor in [None, *FACTORS]:
        for block in model.trf_blocks:
            block.ff.capacity_factor = factor
        loss = validation_loss(model, ids, 32)
        result.append([statistics.mean(block.ff.dropped for block in model.trf_blocks), loss])
    for block in model.trf_blocks:
        block.ff.capacity_factor = None
    return result


def favourites(model, ids, chars):
    """最后一层的每个专家，最偏爱哪几个字符：在它那里的占比，比在全文里的占比高几倍。

    参数:
        model (nn.Module): MoE 模型
        ids (Tensor): 词元编号，(b, t)
        chars (list[str]): 词表

    返回:
        list[str]: 每个专家一项，最偏爱的五个字符
    """
    model.eval()
    with torch.no_grad():
        model(ids)
    choice, tokens = model.trf_blocks[-1].ff.last_choice, ids.flatten()  # (n, j)，(n,)
    everywhere = torch.bincount(tokens, minlength=len(chars)).float()  # (V,)
    result = []
    for expert in range(model.trf_blocks[-1].ff.num_experts):
        here = torch.bincount(tokens[(choice == expert).any(dim=-1)], minlength=len(chars))  # (V,)
        ratio = torch.where(everywhere >= 10, here / everywhere.clamp(min=1), 0)  # (V,)　太少见的字符不算，免得碰巧
        result.append(" ".join(repr(chars[i])[1:-1].replace(" ", "空格") for i in ratio.topk(5).indices if ratio[i] > 0))
    return result


def train_once(path, experts, top_k, shared, balance, rate, steps, seed):
    """训练一次：怎样均衡、种子由参数定，其余都相同。

    参数:
        path (str): 文本文件
        experts, top_k (int): 几个专家里挑几个
        shared (int): 1 表示再加一个共享专家
        balance, rate (float): 见 balancing
        steps, seed (int): 走几步；初始权重和批的次序

    返回:
        dict: curve 是 train 的结果；loads 是每一步的负载，u × l × e；capacity、favourites 见同名的函数
    """
    train_ids, val_ids, chars = encode_characters(Path(path).read_text(encoding="utf-8"))
    model, loads = build(len(chars), experts, top_k, top_k > 1, bool(shared), seed), []
    curve = train(model, train_ids, val_ids, 32, steps, seed, balancing(model, balance, rate, loads))
    return {"curve": curve, "loads": loads, "capacity": capacity_losses(model, val_ids), "favourites": favourites(model, train_ids[: 32 * 256].view(-1, 32), chars)}


def router_gradient(top_k, norm_topk_prob):
    """没训练的一层 MoE，反向一次，路由收到的梯度有多长。

    参数:
        top_k (int): 8 个专家里挑几个
        norm_topk_prob (bool): True 只在选中的之间 softmax

    返回:
        float: 梯度的长度
    """
    ff = build(2, 8, top_k, norm_topk_prob, False, 0).trf_blocks[0].ff
    ff(torch.randn(4, 32, 64)).square().sum().backward()
    return ff.gate.weight.grad.norm().item()


def draw(loads, lower, busy, dropped, quick, path):
    """上排：第一个种子里，最后一层每个专家的负载随训练的变化；下排：损失的差、最忙的专家的差、扔掉的比例。

    参数:
        loads (dict): 名字 → 负载，(u, l, e)
        lower, busy (dict): 名字 → 每个种子的差：最低的损失；最忙的专家是平均的几倍
        dropped (dict): 名字 → 每个种子在 FACTORS 里每一种容量下扔掉的比例
        quick (bool): True 时不画区间
        path (Path): 图片写到哪里
    """
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.2), layout="constrained")
    for axis, name in zip(axes[0], (NONE, LOSS, BIAS)):
        load = loads[name]
        # 每个专家一行；extent 让横轴是步数，纵轴从上到下是第 1 到第 e 个专家。
        image = axis.imshow(load[:, -1].T * load.shape[-1], aspect="auto", vmin=0, vmax=3, interpolation="nearest", extent=[0, len(load), load.shape[-1] + 0.5, 0.5])
        axis.set_title(name)
        axis.set_xlabel("训练步数")
        axis.set_ylabel("最后一层的专家")
    figure.colorbar(image, ax=axes[0], label="负载是平均的几倍（1 最匀）", extend="max")
    for axis, values, title in [(axes[1, 0], lower, "最低的验证损失"), (axes[1, 1], busy, "最忙的专家是平均的几倍")]:
        draw_differences(axis, {name.replace("，", "\n"): each for name, each in values.items()}, quick)
        axis.locator_params(axis="x", nbins=5)
        axis.set_xlabel(f"减去「{NONE}」（往左是更低）")
        axis.set_ylabel("怎样均衡")
        axis.set_title(title)
    for number, (name, several) in enumerate(dropped.items()):
        for i, each in enumerate(several):
            axes[1, 2].plot(FACTORS, [100 * share for share in each], marker="o", linewidth=0.8, alpha=0.6, color=f"C{number}", label=None if i else name)
    axes[1, 2].set_xlabel("容量：每个专家最多收平均的几倍")
    axes[1, 2].set_ylabel("扔掉的（%）")
    axes[1, 2].legend()
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
    """同一个 MoE，只换均衡的办法，每种训练几个种子：比负载、损失、装不下的词元。"""
    parser = argparse.ArgumentParser(description="实验　混合专家的路由：怎样均衡，装不下怎么办")
    parser.add_argument("--balance", type=float, default=0.01, help="均衡损失的权重（默认：0.01，与 Switch Transformer 相同）")
    parser.add_argument("--rate", type=float, default=0.01, help="偏置每步动多少（默认：0.01；DeepSeek-V3 走的步数多得多，用 0.001）")
    parser.add_argument("--steps", type=int, default=200, help="每次训练几步（默认：200）")
    parser.add_argument("--seeds", type=int, default=5, help="每种训练几个种子，5 到 10（默认：5）")
    parser.add_argument("--seed", type=int, default=123, help="第一个种子；各个种子是它乘 1000 再加 0、1、2……（默认：123）")
    parser.add_argument("--quick", action="store_true", help="两个种子，各训练 5 步：看流程，不下结论")
    args = parser.parse_args()
    for name, low, high in [("balance", 0, 100), ("rate", 0, 1), ("steps", 1, 100000), ("seeds", 5, 10), ("seed", 0, 2**50)]:
        if not low <= getattr(args, name) <= high:
            parser.error(f"--{name} 应在 {low} 到 {high} 之间，不能是 {getattr(args, name)}")
    steps, seeds = 5 if args.quick else args.steps, [args.seed * 1000 + i for i in range(2 if args.quick else args.seeds)]
    path = find_data("the-verdict.txt", "story-en.txt")
    train_ids, val_ids, chars = encode_characters(path.read_text(encoding="utf-8"))
    bigram = bigram_loss(train_ids, val_ids, len(chars))
    print(f"数据　{path}　{len(train_ids) + len(val_ids):,} 个字符，{len(chars)} 种")
    print(f"模型　2 层，d = 64，4 个头，上下文 32；8 个专家，每个中间 32 维，每个词元用 2 个；{len(seeds)} 个种子，各 {steps} 步")

    # 共享的那一种，8 个里的 1 个人人都用，其余 7 个里挑 1 个：参数和计算量都与别的相同。
    variants = {NONE: (8, 2, 0, 0.0, 0.0), LOSS: (8, 2, 0, args.balance, 0.0), BIAS: (8, 2, 0, 0.0, args.rate), SHARED: (7, 1, 1, args.balance, 0.0)}
    cases = [(str(path), *variant, steps, seed) for seed in seeds for variant in variants.values()]
    done = side_by_side(train_once, cases, OUTPUTS / "exp_moe_balance", workers=1 if args.quick else None)
    results = {name: [done[(str(path), *variant, steps, seed)] for seed in seeds] for name, variant in variants.items()}
    lowest = {name: [milestones(result["curve"])[1] for result in several] for name, several in results.items()}
    short = args.quick or statistics.mean(lowest[NONE]) > bigram  # 还不如数数：没练够

    loads = {name: [torch.tensor(result["loads"]) for result in several] for name, several in results.items()}  # 每个是 (u, l, e)
    # 最后五分之一的步数里平均，再乘专家数：1 就是正好平均。
    late = {name: [load[-max(1, steps // 5) :].mean(dim=0) * load.shape[-1] for load in several] for name, several in loads.items()}
    busy = {name: [load.max().item() for load in several] for name, several in late.items()}
    print(f"\n均衡的办法　　　　最忙的专家是平均的几倍　最闲的　最低的验证损失（{len(seeds)} 个种子的平均；只看前一个字符、数数，是 {bigram:.3f}）")
    for name, several in late.items():
        print(f"{name.ljust(10, '　')}{statistics.mean(busy[name]):16.2f}{statistics.mean(load.min().item() for load in several):14.2f}{statistics.mean(lowest[name]):14.3f}")
    print(f"减去同一个种子的「{NONE}」（± 是 99% 区间的半宽，比它小的差，这个实验看不出）：")
    lower = {name: [a - b for a, b in zip(lowest[name], lowest[NONE])] for name in (LOSS, BIAS, SHARED)}
    busier = {name: [a - b for a, b in zip(busy[name], busy[NONE])] for name in (LOSS, BIAS, SHARED)}
    for title, values in [("最低的验证损失", lower), ("最忙的是几倍　", busier)]:
        for name, each in values.items():
            print(f"  {title}　{name.ljust(12, '　')}{told(each, short)}")
    print(f"  最低的验证损失　偏置减去均衡损失　　　　{told([a - b for a, b in zip(lowest[BIAS], lowest[LOSS])], short)}")
    print("第一个种子，最后一层各专家偏爱的字符（均衡损失）：")
    for expert, text in enumerate(results[LOSS][0]["favourites"], start=1):
        print(f"  专家 {expert}　{text}")

    print("\n限了容量，扔掉几成（括号里是验证损失因此高多少）；不扔的，就是损失本来的样子")
    print("每个专家最多收平均的　" + "".join(f"{factor:g} 倍".ljust(16) for factor in FACTORS).rstrip())
    for name, several in results.items():
        cells = [(statistics.mean(each["capacity"][i][0] for each in several), statistics.mean(each["capacity"][i][1] - each["capacity"][0][1] for each in several)) for i in (1, 2, 3)]
        print(f"{name.ljust(11, '　')}" + "".join(f"{share:.1%}（{rise:+.3f}）".ljust(17) for share, rise in cells))

    torch.set_num_threads(1)
    traps = {"挑 1 个，只在选中的里 softmax": (1, True), "挑 1 个，全部专家的 softmax（Switch）": (1, False), "挑 2 个，只在选中的里 softmax（原书）": (2, True)}
    gradients = {name: router_gradient(*setting) for name, setting in traps.items()}
    print("\n路由收到的梯度有多长：")
    for name, size in gradients.items():
        print(f"  {name.ljust(22, '　')}{size:.4g}")
    model = build(len(chars), 8, 1, True, False, args.seed)
    before = [block.ff.gate.weight.detach().clone() for block in model.trf_blocks]
    pulls = 5 if args.quick else 20
    train(model, train_ids, val_ids, 32, pulls, args.seed)
    ratios = torch.stack([block.ff.gate.weight / old for block, old in zip(model.trf_blocks, before)]).detach()  # (l, e, d)
    print(f"第一种练 {pulls} 步，路由的权重是原来的 {ratios.min():.5f} 到 {ratios.max():.5f} 倍：只有权重衰减在动它，(1 - 学习率 0.005 × 0.1) 的 {pulls} 次方 = {0.9995**pulls:.5f}")
    draw({name: several[0] for name, several in loads.items()}, lower, busier, {name: [[each["capacity"][i][0] for i in (1, 2, 3)] for each in several] for name, several in results.items()}, short, OUTPUTS / "moe_balance.png")
    print(f"图片已写到 {OUTPUTS / 'moe_balance.png'}")

    print("\n这个数字对吗？")
    trap, switch, book = gradients.values()
    confirm("只选一个、只在选中的里 softmax：路由的梯度正好是 0；另两种不是", trap == 0 and min(switch, book) > 0, "概率没有乘到专家的输出上，或取错了 softmax")
    confirm("收不到梯度的路由，每个数都只按权重衰减变小", (ratios - 0.9995**pulls).abs().max() < 1e-4, "还有别的梯度流到了路由")
    confirm("每一步、每一层的负载加起来都是 1", all((load.sum(dim=-1) - 1).abs().max() < 1e-2 for several in loads.values() for load in several), "没有除以 词元数 × j")
    flat = [each["capacity"] for several in results.values() for each in several]
    confirm("不限容量时一个也不扔；容量越大扔得越少", all(row[0][0] == 0 and row[1][0] >= row[2][0] >= row[3][0] for row in flat), "容量按 词元数 × j / e 算，再乘倍数")
    sizes = [sum(p.numel() for p in build(len(chars), *setting, 0).parameters()) for setting in [(8, 2, True, False), (7, 1, False, True)]]
    confirm(f"共享的那一种，参数只少路由的一列（每层 64 个）：{sizes[0]:,} 与 {sizes[1]:,}", sizes[0] - sizes[1] == 2 * 64, "共享专家的大小与别的专家不同")


if __name__ == "__main__":
    main()
