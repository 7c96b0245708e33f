"""第 4 章 · 实验　换个种子：两个一模一样的网络，也会分出高下

问题：　同一个网络训练十次，只换随机种子，验证损失差多少？"甲比乙低 0.03"，什么时候才算数？
先猜：　两个结构完全相同的网络，先拿一对种子的差当"误差"，再拿第三个种子来比：有几成的机会，会说"差得超过了误差"？（先想 10 秒，再运行）
看点：　① 左图：十条曲线的网络一模一样，却散成一条带子；② 中图：只比一次，一半的时候会分出假的高下；五对、看区间，就几乎不会；
        ③ 右图：真的不同的（四个头换成一个头），区间整个在 0 的一边；"学得快"和"最后低"是两回事，两行可以在 0 的两边。
动手改：1. --steps 150：只训练四分之一，「最低的」那一行换了一边；训练不够就下结论，比的是谁学得快。
        2. 把 paired_interval 里的 5: 4.604 改成 5: 2.776（95% 的区间）：区间变窄，长远看，五个对五个，一百次里约有五次分出假的高下；
           手算的那条自查变成 ✗。
        3. 把 train_once 里的 "n_heads": n_heads 改成 "n_heads": 4，manual_seed(seed) 改成 manual_seed(seed + n_heads)：两边都是四个头，只是种子不同，该分不出。

运行：
    python ch04/experiments/exp_seed_noise.py               # 图片写到 ch04/outputs/
    python ch04/experiments/exp_seed_noise.py --quick
    约 140 秒，0.8 GB（2 核 CPU）；训练过的存着，再运行就立刻出结果

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　k 每个头的维度　V 词表大小（这里词元就是字符）
"""

import argparse
import hashlib
import json
import math
import os
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import combinations, permutations
from multiprocessing import get_context
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"


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


def encode_characters(text):
    """按字符编号，前九成作训练集，后一成作验证集。

    字符当词元，词表只有几十个：模型可以很小，几秒钟就学到东西，几种结构的差别也看得见。

    参数:
        text (str): 训练用的文本

    返回:
        tuple[Tensor, Tensor, list]: 训练集和验证集的编号（都是一维），词表
    """
    chars = sorted(set(text))
    number = {char: i for i, char in enumerate(chars)}
    ids = torch.tensor([number[char] for char in text])
    return ids[: len(ids) * 9 // 10], ids[len(ids) * 9 // 10 :], chars


def bigram_loss(train_ids, val_ids, vocab_size):
    """只看前一个字符、靠数数猜下一个，验证损失是多少：不比它低，就什么上下文也没有学到。

    参数:
        train_ids, val_ids (Tensor): 训练集、验证集的编号，一维
        vocab_size (int): 词表大小

    返回:
        float: 损失
    """
    pairs = train_ids[:-1] * vocab_size + train_ids[1:]
    counts = torch.bincount(pairs, minlength=vocab_size**2).view(vocab_size, vocab_size) + 0.1  # (V, V)　没见过的也留一点概率
    probs = counts / counts.sum(dim=1, keepdim=True)
    return -probs[val_ids[:-1], val_ids[1:]].log().mean().item()


def validation_loss(model, ids, context_length):
    """整个验证集的平均损失：首尾相接地切成若干段，一批算完。

    参数:
        model (nn.Module): 语言模型，(b, t) → (b, t, V)
        ids (Tensor): 验证集的编号，一维
        context_length (int): 每段多长

    返回:
        float: 损失
    """
    model.eval()
    n = (len(ids) - 1) // context_length * context_length
    inputs, targets = ids[:n].view(-1, context_length), ids[1 : n + 1]  # (b, t)，(b·t,)
    with torch.no_grad():
        return nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets).item()


def train(model, train_ids, val_ids, context_length, steps, seed, extra_loss=None):
    """训练一个小模型，记下验证损失的曲线。

    批的次序只由 seed 决定，与模型用掉多少随机数无关：同一个种子下，几种结构看到的批完全相同，才好配对相减。

    参数:
        model (nn.Module): 语言模型
        train_ids, val_ids (Tensor): 训练集、验证集的编号，一维
        context_length (int): 每个样本多长
        steps (int): 走几步
        seed (int): 批的次序
        extra_loss (callable 或 None): 前向之后再加的一项损失，没有就不加

    返回:
        list[tuple[int, float]]: 每项是步数和验证损失，第一项是训练之前
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.1)
    curve = [(0, validation_loss(model, val_ids, context_length))]
    for step in range(1, steps + 1):
        model.train()
        starts = torch.randint(len(train_ids) - context_length, (16, 1), generator=generator)  # (b, 1)
        window = train_ids[starts + torch.arange(context_length + 1)]  # (b, t + 1)　多取一个，右移一位就是目标
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
    """一条曲线，两个问题：学得快不快，最后低不低。

    参数:
        curve (list): train 的结果

    返回:
        tuple[float, float]: 走到四分之一时的损失；整个过程里最低的损失
    """
    return curve[len(curve) // 4][1], min(loss for _, loss in curve)


def side_by_side(job, cases, folder, workers=None):
    """每个 case 运行一次 job(*case)，几个进程并排，做完一个存一个；存过的直接读。

    每个进程只用一个线程：矩阵这么小，几个线程合算一步只会互相等；不如各算各的。
    文件名里有脚本和参数的摘要：改了脚本或参数就重新训练，绝不会读到旧代码的结果。

    参数:
        job (callable): 脚本里最外层的函数，返回能写成 JSON 的结果
        cases (list[tuple]): 每项是 job 的一组参数
        folder (Path): 结果存在哪里
        workers (int 或 None): 几个进程；None 表示有几个核就几个；1 表示就在这个进程里做

    返回:
        dict: case → 结果
    """
    source = Path(job.__globals__["__file__"]).read_bytes()
    paths = {case: folder / f"{hashlib.sha256(source + repr(case).encode()).hexdigest()[:16]}.json" for case in cases}
    todo = [case for case in paths if not paths[case].is_file()]
    folder.mkdir(parents=True, exist_ok=True)

    def save(case, result):
        part = paths[case].with_suffix(".part")
        part.write_text(json.dumps(result), encoding="utf-8")
        os.replace(part, paths[case])

    workers = min(workers or os.cpu_count(), len(todo))
    progress = tqdm(total=len(todo), desc="训练", unit="个", leave=False, disable=None if todo else True)  # None：输出到文件时不画进度条
    if workers <= 1:
        torch.set_num_threads(1)
        for case in todo:
            save(case, job(*case))
            progress.update()
    else:
        # spawn：每个进程从头导入这个脚本，各个系统上都一样；fork 会把 torch 的线程抄成半个，可能卡死。
        with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            running = {pool.submit(job, *case): case for case in todo}
            try:
                for future in as_completed(running):
                    save(running[future], future.result())
                    progress.update()
            except BaseException:  # Ctrl-C，或有一个出了错：还没开始的都不做了
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    progress.close()
    return {case: json.loads(path.read_text(encoding="utf-8")) for case, path in paths.items()}


def paired_interval(differences):
    """几个种子的差，平均是多少，真正的平均差有 99% 的把握落在哪里。

    区间 = 平均 ± t · s / √n。s 是这几个差的标准差：散得开，区间就宽；n 是种子数：次数多，区间就窄。

    参数:
        differences (list[float]): 每个种子一个差，5 到 10 个

    返回:
        tuple[float, float]: 平均，区间的半宽

    异常:
        ValueError: 个数不在 5 到 10 之间
    """
    # 学生 t 分布的分位数（统计书后面都有这张表）：次数越少，对"散得多开"越没把握，倍数就越大。
    t99 = {5: 4.604, 6: 4.032, 7: 3.707, 8: 3.499, 9: 3.355, 10: 3.250}
    n = len(differences)
    if n not in t99:
        raise ValueError(f"有 {n} 个差，要 5 到 10 个：更少，区间宽得没有用；更多，t99 里要添一项")
    return statistics.mean(differences), t99[n] * statistics.stdev(differences) / math.sqrt(n)


def verdict(differences):
    """损失的差该怎么说：区间整个在 0 的一边才算数，跨过 0 就是分不出。

    参数:
        differences (list[float]): 每个种子的损失减去参照的损失，越小越好

    返回:
        str: "更低"、"更高"或"分不出"
    """
    mean, half = paired_interval(differences)
    return "分不出" if abs(mean) <= half else ("更低" if mean < 0 else "更高")


def draw_differences(axis, differences, quick=False):
    """一行一种变体：每个种子的差是一个点，粗线是 99% 区间，竖线是 0。

    参数:
        axis (Axes): 画在哪里
        differences (dict[str, list[float]]): 变体的名字 → 每个种子的差
        quick (bool): True 时只画点：没训练够，不下结论
    """
    for row, values in enumerate(differences.values()):
        axis.scatter(values, [row] * len(values), s=14, color="tab:blue", alpha=0.6, zorder=3)
        if not quick:
            mean, half = paired_interval(values)
            color = "0.5" if abs(mean) <= half else ("tab:green" if mean < 0 else "tab:red")
            axis.plot([mean - half, mean + half], [row, row], linewidth=6, alpha=0.5, color=color, solid_capstyle="butt")
    axis.axvline(0, color="black", linewidth=1)
    axis.set_yticks(range(len(differences)), list(differences))
    axis.set_ylim(len(differences) - 0.5, -0.5)


def train_once(path, n_heads, steps, seed):
    """训练一次：头数、种子由参数定，其余都相同。

    参数:
        path (str): 文本文件
        n_heads (int): 几个头
        steps (int): 走几步
        seed (int): 初始权重和批的次序

    返回:
        list: train 的结果
    """
    train_ids, val_ids, chars = encode_characters(Path(path).read_text(encoding="utf-8"))
    torch.manual_seed(seed)
    cfg = {"vocab_size": len(chars), "context_length": 32, "emb_dim": 64, "n_heads": n_heads, "n_layers": 2, "drop_rate": 0.0, "qkv_bias": False}
    return train(GPTModel(cfg), train_ids, val_ids, 32, steps, seed)


def false_verdicts(losses):
    """同一个网络的许多次训练，随便分成甲乙两方来比，有几成会分出（假的）高下。

    参数:
        losses (list[float]): 每次训练最后的损失，10 个

    返回:
        tuple[float, float]: 只比一次的：一对种子的差当误差，第三个来比，所有的挑法里的比例；五对、看区间的：所有的分法里的比例
    """
    triples = list(permutations(losses, 3))
    once = sum(abs(third - first) > abs(second - first) for first, second, third in triples) / len(triples)
    n, splits = len(losses), list(combinations(range(len(losses)), len(losses) // 2))
    rest = [[i for i in range(n) if i not in chosen] for chosen in splits]
    pairs = [[losses[i] - losses[j] for i, j in zip(chosen, others)] for chosen, others in zip(splits, rest)]
    return once, sum(verdict(differences) != "分不出" for differences in pairs) / len(pairs)


def draw(curves, bigram, rates, differences, quick, path):
    """左图：同一个网络的十条曲线；中图：两种比法各有几成会分出假的高下；右图：真的不同的，区间在哪里。

    参数:
        curves (list): 同一个网络的几条曲线
        bigram (float): 只看前一个字符的损失
        rates (tuple): false_verdicts 的结果
        differences (dict): 名字 → 每个种子的差
        quick (bool): True 时不画区间
        path (Path): 图片写到哪里
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained", width_ratios=[1.2, 0.8, 1.2])
    for curve in curves:
        left.plot(*zip(*curve[1:]), color="tab:blue", linewidth=1, alpha=0.6)
    left.axhline(bigram, color="0.5", linestyle="--", label="只看前一个字符，数数")
    left.set_title(f"同一个网络，{len(curves)} 个种子")
    left.set_xlabel("训练步数")
    left.set_ylabel("验证损失")
    left.legend()
    bars = middle.bar(["比一次", "五对，看区间"], [100 * rate for rate in rates], color=["tab:red", "tab:green"])
    middle.bar_label(bars, fmt="%.1f%%")
    middle.set_ylabel("分出假的高下（%）")
    middle.set_title("两个一模一样的网络")
    draw_differences(right, differences, quick)
    right.set_xlabel("损失的差（往左是更低）")
    right.set_title("一个头的，减去四个头的")
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
    """同一个网络训练十次，再把只有一个头的也训练十次：学会怎么比才不上当。"""
    parser = argparse.ArgumentParser(description="实验　换个种子：怎么比较两种网络才不上当")
    parser.add_argument("--steps", type=int, default=600, help="每次训练几步（默认：600）")
    parser.add_argument("--seed", type=int, default=123, help="第一个种子；十个种子是它乘 1000 再加 0 到 9（默认：123）")
    parser.add_argument("--quick", action="store_true", help="每次只训练 5 步：看流程，不下结论")
    args = parser.parse_args()
    if not 20 <= args.steps <= 100000:
        parser.error(f"--steps 应在 20 到 100000 之间，不能是 {args.steps}")
    if not 0 <= args.seed < 2**50:
        parser.error(f"--seed 应是 0 到 2 的 50 次方之间的整数，不能是 {args.seed}")
    steps, seeds = 5 if args.quick else args.steps, [args.seed * 1000 + i for i in range(10)]
    path = find_data("the-verdict.txt", "story-en.txt")
    train_ids, val_ids, chars = encode_characters(path.read_text(encoding="utf-8"))
    bigram = bigram_loss(train_ids, val_ids, len(chars))
    print(f"数据　{path}　{len(train_ids) + len(val_ids):,} 个字符，{len(chars)} 种")
    print(f"模型　2 层，d = 64，上下文 32；四个头的和一个头的各训练 10 次，每次 {steps} 步")

    cases = [(str(path), n_heads, steps, seed) for n_heads in (4, 1) for seed in seeds]
    curves = side_by_side(train_once, cases, OUTPUTS / "exp_seed_noise", workers=1 if args.quick else None)
    four, one = ([curves[str(path), n_heads, steps, seed] for seed in seeds] for n_heads in (4, 1))
    best = [milestones(curve)[1] for curve in four]
    print(f"\n同一个四个头的网络，10 个种子，最低的验证损失（只看前一个字符、数数，是 {bigram:.3f}）：")
    print("  " + "　".join(f"{loss:.3f}" for loss in best) + f"　最好与最差相差 {max(best) - min(best):.3f}")

    once, five = false_verdicts(best)
    print("\n拿它自己与自己比，分出（假的）高下的比例：")
    print(f"  一对种子的差当误差，第三个种子来比　{once:.0%}（不用训练也知道：三个数里，两个差谁大，一半一半）")
    print(f"  五个对五个，看差的 99% 区间　　　　 {five:.1%}")

    early, low = ([milestones(a)[which] - milestones(b)[which] for a, b in zip(one, four)] for which in (0, 1))
    print("\n真的不同的：一个头的减去四个头的，同一个种子配对")
    for title, differences in [("走到四分之一时", early), ("最低的", low)]:
        mean, half = paired_interval(differences)
        print(f"  {title}　{mean:+.3f} ± {half:.3f}" + ("（训练太短：看流程，不下结论）" if args.quick else f"　{verdict(differences)}"))
    alone = math.hypot(statistics.stdev(best), statistics.stdev(milestones(curve)[1] for curve in one))  # 两边互不相干时，差的标准差
    print(f"  差的标准差：配对 {statistics.stdev(low):.3f}，两边互不相干时该是 {alone:.3f}：小多少，就是同一个种子共有的运气抵消了多少")
    draw(four, bigram, (once, five), {"走到四分之一时": early, "最低的": low}, args.quick, OUTPUTS / "seed_noise.png")
    print(f"图片已写到 {OUTPUTS / 'seed_noise.png'}")

    print("\n这个数字对吗？")
    again = train_once(str(path), 1, 2, seeds[0])
    confirm("同一个种子再训练一次，曲线逐位相同", again == train_once(str(path), 1, 2, seeds[0]), "有一处随机数没有归种子管")
    confirm(f"只比一次，约一半会分出假的高下：{once:.0%}", 0.3 < once < 0.7, "三个数里，谁离第一个远，本来就是一半一半；十个里有相同的才会偏")
    confirm(f"看区间的，假的高下不到 5%：{five:.1%}", five < 0.05, "十个数碰巧分成了两堆（约六十批里有一批）；或 t99 的倍数小了，忘了除以 √n")
    mean, half = paired_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    confirm(f"1、2、3、4、5 的区间是 3 ± {half:.3f}（手算：4.604 × 1.581 / √5 = 3.256）", abs(half - 3.256) < 1e-3, "标准差要除以 n - 1")
    start = four[0][0][1]
    confirm(f"没训练时损失 {start:.2f} 接近 ln {len(chars)} = {math.log(len(chars)):.2f}", abs(start - math.log(len(chars))) < 0.6, "初始权重太大")


if __name__ == "__main__":
    main()
