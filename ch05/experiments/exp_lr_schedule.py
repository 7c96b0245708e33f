"""第 5 章 · 实验　附录 D：学习率先升后降、裁剪梯度，值不值？

问题：　原书附录 D 给训练循环加了三样：预热（warmup）、余弦衰减（cosine decay）、梯度裁剪（gradient clipping）。各值多少损失？
先猜：　拿"最好的固定学习率"来比，三样全加上，验证损失能低多少？三样里去掉哪一样最疼？（先想 10 秒，再运行）
看点：　① 左下图：横轴是学习率。三样的好处，是把最低点压低，还是让偏大的学习率也能用？② 每种做法都用自己最好的学习率，
        在没有用来挑学习率的种子上比；③ 右上图：梯度的范数一开始有多大，后来还会不会冒尖，有几成的步被裁剪。
动手改：1. 加 --quick --warmup 100（一共才 8 步）：预热比整个训练还长，一句话拒绝。书上的写法不拦：学习率一直在升，训练就结束了。
        2. 把 learning_rate 里的 0.5 * (1 + math.cos( 改成 (1 + math.cos(：预热一结束，学习率就跳到两倍，自查的第一条变成 ✗。
        3. 把 clip_gradients 里的 ]).norm() 改成 ]).sum()：各个张量的范数直接相加，不是合起来的范数，自查变成 ✗。

运行：
    python ch05/experiments/exp_lr_schedule.py               # 图片写到 ch05/outputs/
    python ch05/experiments/exp_lr_schedule.py --quick
    python ch05/experiments/exp_lr_schedule.py --book        # 附录 D.4 的训练：124M，15 轮，要原书的 the-verdict.txt
    约 210 秒，0.8 GB（2 核 CPU）；训练过的存着，再运行就立刻出结果；--book 约 12 分钟，5 GB

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　k 每个头的维度　V 词表大小（默认的训练里，词元就是字符）
"""

import argparse
import hashlib
import json
import math
import os
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import matplotlib.pyplot as plt
import tiktoken
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"

# 改这里
RATES = [0.004, 0.008, 0.016, 0.032, 0.064]  # 扫哪几个（峰值）学习率
# 名字 → 预热吗，余弦吗，裁剪吗
RECIPES = {"三样全加": (1, 1, 1), "固定的学习率": (0, 0, 0), "去掉预热": (0, 1, 1), "去掉余弦": (1, 0, 1), "去掉裁剪": (1, 1, 0)}
FULL = "三样全加"
MAX_NORM = 0.25  # 裁剪到多大。书上是 1，GPT-3 也是；这个小模型的梯度短，一次也超不过 1，裁了等于没裁，所以取小
WHEN = ["走到四分之一时", "最低的"]  # 学得快不快，最后低不低：两个问题


# region 沿用 ch02/main: GPTDatasetV1, create_dataloader_v1
class GPTDatasetV1(Dataset):
    """把一段长文本切成许多等长的"输入—目标"样本。（详解见 ch02/main/example_03_sliding_window.py）"""

    def __init__(self, txt, tokenizer, max_length, stride):
        token_ids = tokenizer.encode(txt, allowed_special={"<|endoftext|>"})
        if len(token_ids) <= max_length:
            raise ValueError(f"文本只有 {len(token_ids)} 个词元，凑不出一个长 {max_length} 的样本（目标还要多 1 个），请换长一点的文本或改小 max_length")
        ids = torch.tensor(token_ids)
        self.input_ids = ids[:-1].unfold(0, max_length, stride)  # (n, t)
        self.target_ids = ids[1:].unfold(0, max_length, stride)  # (n, t)

    def __len__(self):
        return len(self.input_ids)

    def __getitem__(self, idx):
        return self.input_ids[idx], self.target_ids[idx]


def create_dataloader_v1(txt, batch_size=4, max_length=256, stride=128, shuffle=True, drop_last=True, num_workers=0):
    """文本 → 一批一批的（输入，目标）。（详解见 ch02/main/example_03_sliding_window.py）"""
    dataset = GPTDatasetV1(txt, tiktoken.get_encoding("gpt2"), max_length, stride)
    return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, drop_last=drop_last, num_workers=num_workers)


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


# region 沿用 ch04/main: LayerNorm, GELU, FeedForward, TransformerBlock, GPTModel, generate_text_simple
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


def generate_text_simple(model, idx, max_new_tokens, context_size):
    """贪心解码（greedy decoding）：每次都选分数最高的那个词元，接到后面，再问一次。（详解见 ch04/main/example_07_generate_text.py）"""
    for _ in range(max_new_tokens):
        idx_cond = idx[:, -context_size:]  # (b, t)
        with torch.no_grad():
            logits = model(idx_cond)  # (b, t, V)
        logits = logits[:, -1, :]  # (b, V)
        idx_next = torch.argmax(logits, dim=-1, keepdim=True)  # (b, 1)
        idx = torch.cat((idx, idx_next), dim=1)  # (b, t + 1)
    return idx


# endregion


# region 沿用 ch05/main: text_to_token_ids, token_ids_to_text, calc_loss_batch, calc_loss_loader, evaluate_model, generate_and_print_sample
def text_to_token_ids(text, tokenizer):
    """文本 → 模型的输入，(1, t) 的词元编号。（详解见 ch05/main/example_01_loss.py）"""
    encoded = tokenizer.encode(text, allowed_special={"<|endoftext|>"})
    return torch.tensor(encoded).unsqueeze(0)  # (1, t)


def token_ids_to_text(token_ids, tokenizer):
    """模型的输出 → 文本。（详解见 ch05/main/example_01_loss.py）"""
    return tokenizer.decode(token_ids.squeeze(0).tolist())


def calc_loss_batch(input_batch, target_batch, model, device):
    """一批的损失：模型给正确的下一个词元的概率，取对数、取负，再对所有位置求平均。（详解见 ch05/main/example_01_loss.py）"""
    input_batch, target_batch = input_batch.to(device), target_batch.to(device)
    logits = model(input_batch)  # (b, t, V)
    return nn.functional.cross_entropy(logits.flatten(0, 1), target_batch.flatten())  # (b·t, V)，(b·t,)


def calc_loss_loader(data_loader, model, device, num_batches=None):
    """一个数据集的平均损失。（详解见 ch05/main/example_01_loss.py）"""
    losses = []
    for input_batch, target_batch in islice(data_loader, num_batches):
        loss = calc_loss_batch(input_batch, target_batch, model, device)
        losses.append(loss.item())
    return sum(losses) / len(losses) if losses else float("nan")


def evaluate_model(model, train_loader, val_loader, device, eval_iter):
    """在训练集和验证集上各看几批，估计损失。（详解见 ch05/main/example_02_training_loop.py）"""
    model.eval()
    with torch.no_grad():
        train_loss = calc_loss_loader(train_loader, model, device, num_batches=eval_iter)
        val_loss = calc_loss_loader(val_loader, model, device, num_batches=eval_iter)
    model.train()
    return train_loss, val_loss


def generate_and_print_sample(model, tokenizer, device, start_context):
    """让模型接着提示词写 50 个词元，印成一行：看数字不如看它说的话。（详解见 ch05/main/example_02_training_loop.py）"""
    model.eval()
    context_size = model.pos_emb.weight.shape[0]
    encoded = text_to_token_ids(start_context, tokenizer).to(device)
    token_ids = generate_text_simple(model, encoded, max_new_tokens=50, context_size=context_size)
    print("    " + token_ids_to_text(token_ids, tokenizer).replace("\n", " "))
    model.train()


# endregion


# region 沿用 ch04/experiments/exp_seed_noise.py: encode_characters, bigram_loss, validation_loss, milestones, side_by_side, paired_interval, verdict, draw_differences
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


def learning_rate(step, total_steps, warmup_steps, peak_lr, initial_lr, min_lr):
    """第 step 步的学习率：先直线升到 peak_lr，再沿半个余弦降到 min_lr。

    参数:
        step (int): 第几步，从 0 数
        total_steps, warmup_steps (int): 一共几步；前几步预热，0 就是不预热
        peak_lr, initial_lr, min_lr (float): 最高的、第 0 步的、最后的学习率

    返回:
        float: 学习率

    异常:
        ValueError: 预热不比整个训练短

    出处: 原书 D.1、D.2
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(f"预热 {warmup_steps} 步，整个训练才 {total_steps} 步：预热要短得多，通常不到十分之一（书上是两成）")
    # 预热：AdamW 的二阶动量一开始只见过几批，不可信；先小步走，等它攒够。initial_lr 若是 0，第 0 步就白走了。
    if step < warmup_steps:
        return initial_lr + step * (peak_lr - initial_lr) / warmup_steps
    # 余弦：lr = min + (peak − min) · ½ · (1 + cos πp)，p 从 0 走到 1。两头平，中间陡：大步走得久，收尾也走得久。
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return min_lr + (peak_lr - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def find_highest_gradient(model):
    """所有梯度里最大的一个数。书上比的是带符号的，负得再多也不算；看大小应当用范数。

    参数:
        model (nn.Module): 已经 backward 过的模型

    返回:
        float: 最大的梯度

    出处: 原书 D.3
    """
    return max(p.grad.max().item() for p in model.parameters() if p.grad is not None)


def clip_gradients(model, max_norm):
    """梯度裁剪：把全部梯度当成一个长向量，太长就按比例缩到 max_norm，方向不变。

    参数:
        model (nn.Module): 已经 backward 过的模型，梯度原地改
        max_norm (float): 最长多少；无穷大就是只量不裁

    返回:
        float: 裁剪之前的范数

    出处: 原书 D.3，即 torch.nn.utils.clip_grad_norm_
    """
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.stack([grad.norm() for grad in grads]).norm().item()  # 各个张量的范数，再求一次范数，就是全部的
    scale = min(1.0, max_norm / (norm + 1e-6))
    for grad in grads:
        grad.mul_(scale)
    return norm


def train_model(model, batches, lrs, max_norm, evaluate, eval_freq, clip_from=0):
    """附录 D.4 的训练循环：每步先定学习率，更新之前裁剪。

    参数:
        model (nn.Module): 语言模型
        batches (Iterable): 一批批的（输入，目标），有 len(lrs) 批
        lrs (list[float]): 每步的学习率
        max_norm (float): 裁剪到多大
        evaluate (callable): 不带参数，返回要记下的损失
        eval_freq (int): 每几步评估一次
        clip_from (int): 从第几步起裁剪

    返回:
        dict: lr、loss、norm 每步一个数，curve 每项是（第几步，evaluate 的结果）
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lrs[0], weight_decay=0.1)
    log = {"lr": [], "loss": [], "norm": [], "curve": []}
    for step, (inputs, targets) in enumerate(batches):
        model.train()
        optimizer.zero_grad()
        for group in optimizer.param_groups:  # 学习率就是优化器里的一个数，每步改掉它
            group["lr"] = lrs[step]
        loss = calc_loss_batch(inputs, targets, model, torch.device("cpu"))
        loss.backward()
        norm = clip_gradients(model, max_norm if step >= clip_from else math.inf)  # 在 backward 之后、step 之前
        optimizer.step()
        log["lr"].append(lrs[step])
        log["loss"].append(loss.item())
        log["norm"].append(norm)
        if step % eval_freq == 0 or step == len(lrs) - 1:
            log["curve"].append((step, evaluate()))
    return log


def rates_of(recipe, peak, steps, warmup):
    """一种做法每步的学习率；起点和终点都是峰值的百分之一，与 D.4 相同。

    参数:
        recipe (str): RECIPES 里的名字
        peak (float): 峰值
        steps, warmup (int): 一共几步，预热几步

    返回:
        list[float]: 每步的学习率
    """
    warm, cosine, _ = RECIPES[recipe]
    # 不要余弦，就让 min_lr 等于峰值：半个余弦成了一条平线。
    return [learning_rate(step, steps, warmup * warm, peak, peak / 100, peak / 100 if cosine else peak) for step in range(steps)]


def train_once(path, recipe, peak, steps, warmup, seed):
    """训练一次小模型。同一个种子，初始权重、批的次序都相同，才好配对相减。

    参数:
        path (str): 文本文件
        recipe (str): RECIPES 里的名字
        peak (float): 峰值学习率
        steps, warmup (int): 一共几步，预热几步
        seed (int): 初始权重和批的次序

    返回:
        dict: train_model 的结果
    """
    train_ids, val_ids, chars = encode_characters(read_text(path))
    torch.manual_seed(seed)
    cfg = {"vocab_size": len(chars), "context_length": 32, "emb_dim": 64, "n_heads": 4, "n_layers": 2, "drop_rate": 0.0, "qkv_bias": False}
    model, generator = GPTModel(cfg), torch.Generator().manual_seed(seed)

    def batches():
        """每批随机取 16 段。"""
        for _ in range(steps):
            window = train_ids[torch.randint(len(train_ids) - 32, (16, 1), generator=generator) + torch.arange(33)]  # (b, t + 1)
            yield window[:, :-1], window[:, 1:]

    max_norm = MAX_NORM if RECIPES[recipe][2] else math.inf
    return train_model(model, batches(), rates_of(recipe, peak, steps, warmup), max_norm, lambda: validation_loss(model, val_ids, 32), max(4, steps // 20))


# region 沿用 setup/find_data.py: find_data, read_text
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


def read_text(path):
    """读一个文本文件；不是能用来训练的文本时，用一句中文说清楚。（详解见 setup/find_data.py）"""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise ValueError(f"读不了 {path}：文件不存在，或不是 UTF-8 编码的文本（请用编辑器另存为 UTF-8）") from None
    if "\0" in text or not text.strip():
        raise ValueError(f"{path} 是空的，或是二进制文件，请换一个文本文件")
    return text


# endregion

os.environ["TIKTOKEN_CACHE_DIR"] = str(find_data("tiktoken"))  # GPT-2 的词表由 setup/run.sh 放好，不联网


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def book():
    """附录 D 的数：D.3 的梯度和 D.4 的训练，124M、15 轮、峰值 0.001、预热两成。

    异常:
        ValueError: 没有原书的文本
    """
    path = find_data("the-verdict.txt", "story-en.txt")
    if path.name != "the-verdict.txt":
        raise ValueError("--book 要原书的 the-verdict.txt：运行 python setup/download.py，或让 LLM_DATA_DIR 指向它所在的文件夹")
    config = {"vocab_size": 50257, "context_length": 256, "emb_dim": 768, "n_heads": 12, "n_layers": 12, "drop_rate": 0.1, "qkv_bias": False}
    text, tokenizer, cpu, epochs = read_text(path), tiktoken.get_encoding("gpt2"), torch.device("cpu"), 15
    split = int(0.90 * len(text))
    torch.manual_seed(123)
    train_loader = create_dataloader_v1(text[:split], batch_size=2, max_length=256, stride=256)
    val_loader = create_dataloader_v1(text[split:], batch_size=2, max_length=256, stride=256, shuffle=False, drop_last=False)
    # 书上前面两节各空转 15 轮，只为了印学习率；每轮都用掉随机数，D.3 用的是最后取到的那一批。
    for _ in range(2 * epochs):
        inputs, targets = list(train_loader)[-1]
    torch.manual_seed(123)
    model = GPTModel(config)
    calc_loss_batch(inputs, targets, model, cpu).backward()
    before, norm = find_highest_gradient(model), clip_gradients(model, 1.0)
    after = find_highest_gradient(model)
    print(f"【D.3】最大的梯度 {before:.4f}，范数 {norm:.2f}；裁剪到 1 之后，最大的梯度 {after:.4f}")

    torch.manual_seed(123)
    model, total = GPTModel(config), len(train_loader) * epochs
    warmup = int(0.2 * total)
    lrs = [learning_rate(step, total, warmup, 0.001, 1e-5, 1e-5) for step in range(total)]
    print(f"【D.4】{total} 步，预热 {warmup} 步")

    def evaluate():
        """在训练集和验证集上各看一批，边走边印。"""
        losses = evaluate_model(model, train_loader, val_loader, cpu, eval_iter=1)
        print(f"  训练损失 {losses[0]:.3f}　验证损失 {losses[1]:.3f}", flush=True)
        return losses

    batches = (batch for _ in range(epochs) for batch in train_loader)
    log = train_model(model, batches, lrs, 1.0, evaluate, 5, clip_from=warmup)  # 书上预热完了才开始裁剪
    generate_and_print_sample(model, tokenizer, cpu, "Every effort moves you")
    curve = dict(log["curve"])
    print("\n这个数字对吗？")
    confirm(f"最大的梯度 {before:.4f} → {after:.4f}，与原书相同（0.0411 → 0.0185）", abs(before - 0.0411) < 2e-4 and abs(after - 0.0185) < 2e-4, "随机数的次序变了")
    wanted = {0: (10.934, 10.939), 5: (9.151, 9.461), 25: (5.750, 6.634)}
    same = all(abs(ours - theirs) < 0.02 for step in wanted for ours, theirs in zip(curve[step], wanted[step]))
    confirm("第 0、5、25 步与原书相同（差不到 0.02）", same, "种子、学习率的公式或裁剪变了；MPS、CUDA 上本来就不同")
    close = abs(curve[130][0] - 0.035) < 0.02 and abs(curve[130][1] - 6.938) < 0.05
    confirm(f"第 130 步 {curve[130][0]:.3f} / {curve[130][1]:.3f}，原书 0.035 / 6.938", close, "同上")


def same_as_torch():
    """学习率与 PyTorch 自带的两个调度器接起来相同，裁剪与 clip_grad_norm_ 相同：最多差多少。

    返回:
        tuple[float, float]: 学习率的差除以峰值，裁剪之后梯度的差
    """
    worst, optimizers = 0.0, torch.optim.lr_scheduler
    for total, warmup in [(135, 27), (50, 1), (40, 39)]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
        up = optimizers.LinearLR(optimizer, start_factor=0.01, total_iters=warmup)
        down = optimizers.CosineAnnealingLR(optimizer, total - warmup, eta_min=1e-5)
        both = optimizers.SequentialLR(optimizer, [up, down], milestones=[warmup])
        for step in range(total):
            worst = max(worst, abs(learning_rate(step, total, warmup, 0.01, 1e-4, 1e-5) - optimizer.param_groups[0]["lr"]) / 0.01)
            optimizer.step()
            both.step()
    gap = 0.0
    for size in (10.0, 0.01):  # 一个太长，一个不长：不长的应当不动
        models = [nn.Linear(8, 8), nn.Linear(8, 8)]
        for name in ("weight", "bias"):
            grad = torch.randn(getattr(models[0], name).shape, generator=torch.Generator().manual_seed(1)) * size
            for model in models:
                getattr(model, name).grad = grad.clone()
        norms = clip_gradients(models[0], 1.0), torch.nn.utils.clip_grad_norm_(models[1].parameters(), 1.0).item()
        gap = max(gap, abs(norms[0] - norms[1]) / norms[1], *[(a.grad - b.grad).abs().max().item() for a, b in zip(models[0].parameters(), models[1].parameters())])
    return worst, gap


def draw(logs, sweep, gaps, bigram, quick, path):
    """上排：学习率、训练损失、梯度的范数；下排：学习率扫一遍、配对的差。

    参数:
        logs (dict): 名字 → 第一个种子的 train_model 结果
        sweep (dict): 名字 → 学习率 → 验证损失
        gaps (dict): 名字 → 每个种子的差
        bigram (float): 只看前一个字符的损失
        quick (bool): True 时不画区间
        path (Path): 图片写到哪里
    """
    figure, ((rate, loss, norm), (low, right, _)) = plt.subplots(2, 3, figsize=(13, 7), layout="constrained")
    figure.delaxes(_)
    right.set_subplotspec(right.get_gridspec()[1, 1:])
    colors = dict(zip(RECIPES, ["tab:blue", "0.3", "tab:red", "tab:green", "tab:orange"]))
    for name, log in logs.items():
        rate.plot(log["lr"], color=colors[name], label=name)
        smooth = [statistics.mean(log["loss"][max(0, i - 9) : i + 1]) for i in range(len(log["loss"]))]
        loss.plot(smooth, color=colors[name], linewidth=1, label=name)
        norm.plot(log["norm"], color=colors[name], linewidth=0.8, label=name)
    for name, points in sweep.items():
        low.plot(*zip(*points.items()), "o-", color=colors[name], markersize=4, label=name)
    norm.axhline(MAX_NORM, color="black", linestyle="--", linewidth=1)
    norm.set_yscale("log")
    low.axhline(bigram, color="0.6", linestyle=":", label="只看前一个字符，数数")
    low.set_xscale("log")
    low.set_xticks(RATES, [f"{rate:g}" for rate in RATES], minor=False)
    low.set_xticks([], minor=True)
    for axis, title, label in [(rate, "学习率，各用自己最好的峰值", "学习率"), (loss, "训练损失（10 步的平均）", "损失"), (norm, "梯度的范数，裁剪之前（虚线：裁剪到这里）", "范数")]:
        axis.set_title(title)
        axis.set_xlabel("步")
        axis.set_ylabel(label)
    loss.legend(fontsize=8)
    low.set_title("学习率扫一遍：用来挑的种子")
    low.set_xlabel("峰值学习率")
    low.set_ylabel("最低的验证损失")
    low.legend(fontsize=8)
    draw_differences(right, gaps, quick)
    right.set_xlabel(f"验证损失的差，减去「{FULL}」（往左是更低）")
    right.set_title("没有用来挑学习率的种子，配对相减")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def compare(path, steps, warmup, seeds, quick):
    """扫学习率，各挑最好的，再用新的种子配对比较。

    参数:
        path (Path): 文本文件
        steps, warmup (int): 一共几步，预热几步
        seeds (list[int]): 比较用的种子；挑学习率另用两个
        quick (bool): True 时只看流程

    返回:
        dict: 做法 → 每个种子的 train_model 结果
    """
    train_ids, val_ids, chars = encode_characters(read_text(path))
    bigram = bigram_loss(train_ids, val_ids, len(chars))
    workers, folder, tuning = 1 if quick else None, OUTPUTS / "exp_lr_schedule", [seeds[0] + 500, seeds[0] + 501][: 1 if quick else 2]
    rates = RATES[1:3] if quick else RATES
    cases = {(name, rate, seed): (str(path), name, rate, steps, warmup, seed) for name in RECIPES for rate in rates for seed in tuning}
    results = side_by_side(train_once, list(cases.values()), folder, workers)
    sweep = {name: {rate: statistics.mean(milestones(results[cases[name, rate, seed]]["curve"])[1] for seed in tuning) for rate in rates} for name in RECIPES}
    best = {name: min(points, key=points.get) for name, points in sweep.items()}
    print(f"① 扫学习率：最低的验证损失，{len(tuning)} 个种子的平均，* 是挑中的（只看前一个字符、数数，是 {bigram:.3f}）")
    print("　" + "　".join(f"{rate:<6g}" for rate in rates))
    for name, points in sweep.items():
        print("　" + "　".join(f"{loss:.3f}{'*' if rate == best[name] else ' '}" for rate, loss in points.items()) + f"　{name}")
    if edge := [name for name in RECIPES if best[name] in (rates[0], rates[-1]) and not quick]:
        print(f"　{'、'.join(edge)}：挑中的在头上，再往外也许还有更好的，RATES 里可以添")

    cases = {(name, seed): (str(path), name, best[name], steps, warmup, seed) for name in RECIPES for seed in seeds}
    results = side_by_side(train_once, list(cases.values()), folder, workers)
    logs = {name: [results[cases[name, seed]] for seed in seeds] for name in RECIPES}
    ends = {name: [milestones(log["curve"]) for log in each] for name, each in logs.items()}
    print(f"\n② 各用自己最好的学习率，{len(seeds)} 个新的种子" + ("：训练太短，看流程，不下结论" if quick else ""))
    for name, each in ends.items():
        norms = [value for log in logs[name] for value in log["norm"]]
        print(f"　最低的验证损失 {statistics.mean(low for _, low in each):.3f}　梯度的范数：中位数 {statistics.median(norms):.2f}，最大 {max(norms):.2f}，"
              f"{sum(value > MAX_NORM for value in norms) / len(norms):4.0%} 的步超过 {MAX_NORM:g}　{name}")  # fmt: skip
    gaps = {}
    for name in [name for name in RECIPES if name != FULL]:
        for which, when in enumerate(WHEN):
            gaps[f"{name}：\n{when}"] = differences = [mine[which] - base[which] for mine, base in zip(ends[name], ends[FULL])]
            mean, half = paired_interval(differences)
            print(f"　{name}减{FULL}，{when}　{mean:+.3f} ± {half:.3f}" + ("" if quick else f"　{verdict(differences)}"))
    if not quick:
        spread = {name: max(points.values()) - min(points.values()) for name, points in sweep.items()}
        print(f"　学习率选差了要付多少（最差的减最好的）：{FULL} {spread[FULL]:.2f}，固定的学习率 {spread['固定的学习率']:.2f}。")
        print("　这是一个很小的模型、一篇短文，挑学习率只用两个种子，挑得准不准的运气也在差里面；模型大、步数多的时候，预热和裁剪还防着训练中途飞掉，那是这里看不到的。")
    picture = OUTPUTS / f"lr_schedule{'_quick' * quick}.png"
    draw({name: each[0] for name, each in logs.items()}, sweep, gaps, bigram, quick, picture)
    print(f"图片已写到 {picture}")
    return logs


def main():
    """默认：附录 D 的公式和小模型上的比较；--book：附录 D.4 的那次训练。"""
    parser = argparse.ArgumentParser(description="实验　附录 D：预热、余弦衰减、梯度裁剪")
    parser.add_argument("--steps", type=int, default=300, help="每次训练几步（默认：300）")
    parser.add_argument("--warmup", type=int, help="预热几步（默认：步数的两成，与原书相同）")
    parser.add_argument("--seeds", type=int, default=5, help="比较用几个种子，5 到 10（默认：5）")
    parser.add_argument("--seed", type=int, default=123, help="第一个种子是它乘 1000（默认：123）")
    parser.add_argument("--text", type=Path, help="训练用的文本（默认：the-verdict.txt，没有就用自带的 story-en.txt）")
    parser.add_argument("--book", action="store_true", help="附录 D 在 124M 上的数：D.3 的梯度，D.4 的 135 步")
    parser.add_argument("--quick", action="store_true", help="每次只训练 8 步：看流程，不下结论")
    args = parser.parse_args()
    for name, low, high in [("steps", 20, 100000), ("seeds", 5, 10), ("seed", 0, 2**50)]:
        if not low <= getattr(args, name) <= high:
            parser.error(f"--{name} 应在 {low} 到 {high} 之间，不能是 {getattr(args, name)}")
    steps = 8 if args.quick else args.steps
    warmup = int(0.2 * steps) if args.warmup is None else args.warmup
    try:
        if args.book:
            book()
            return
        learning_rate(0, steps, warmup, 1.0, 0.0, 0.0)  # 预热太长，早说
        path = args.text or find_data("the-verdict.txt", "story-en.txt")
        if len(read_text(path)) < 2000:
            raise ValueError(f"{path} 太短，至少要 2000 个字符")
        torch.set_num_threads(1)
        print(f"【D.1】135 步的训练预热 27 步，学习率从 0.0001 升到 0.01，每步加 {learning_rate(1, 135, 27, 0.01, 1e-4, 1e-5) - 1e-4:.9f}")
        print("【D.2】之后 108 步沿半个余弦往下：" + "，".join(f"第 {step} 步 {learning_rate(step, 135, 27, 0.01, 1e-4, 1e-5):.5f}" for step in (27, 54, 81, 108, 134)))
        example = nn.Linear(2, 2, bias=False)
        example.weight.grad = torch.tensor([[1.0, 2.0], [2.0, 4.0]])
        print(f"【D.3】梯度 [[1, 2], [2, 4]] 的范数是 {clip_gradients(example, 1.0):.0f}，裁剪到 1：{[[round(x, 3) for x in row] for row in example.weight.grad.tolist()]}")
        print(f"\n小模型：2 层，d = 64，上下文 32，词元是字符；文本 {path}；各 {steps} 步，预热 {warmup} 步", flush=True)
        logs = compare(path, steps, warmup, [args.seed * 1000 + i for i in range(args.seeds)], args.quick)
    except (ValueError, OSError) as error:
        parser.error(str(error))

    print("\n这个数字对吗？")
    worst, gap = same_as_torch()
    confirm(f"学习率与 LinearLR 接 CosineAnnealingLR 相同（最多差峰值的 {worst:.0e}）", worst < 1e-6, "预热多走或少走了一步，或余弦没有除以 2")
    confirm(f"裁剪与 clip_grad_norm_ 相同（最多差 {gap:.0e}），不长的不动", gap < 1e-6, "范数没有把全部参数合起来算，或放大了短的")
    same = torch.allclose(example.weight.grad, torch.tensor([[0.2, 0.4], [0.4, 0.8]]), atol=1e-5)
    confirm("书上的例子：范数 5，裁剪之后 [[0.2, 0.4], [0.4, 0.8]]", same, "除的不是 5")
    full, fixed = logs[FULL][0], logs["固定的学习率"][0]
    peaked = max(full["lr"]) == full["lr"][warmup] and (warmup == 0 or full["lr"][0] < full["lr"][warmup]) and full["lr"][-1] < full["lr"][warmup]
    confirm("真的用上了：预热结束的那一步最高，最后比它低；固定的从头到尾一样", peaked and len(set(fixed["lr"])) == 1, "算好的学习率没有写进优化器")
    again = [log["loss"][0] for log in (logs[name][0] for name in RECIPES)]
    confirm("同一个种子，几种做法的第 0 步损失逐位相同", len(set(again)) == 1, "初始权重或第一批不同，配对就没有意义了")


if __name__ == "__main__":
    main()
