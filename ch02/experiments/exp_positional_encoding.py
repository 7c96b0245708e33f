"""第 2 章 · 实验　五种位置编码，谁能走出训练过的长度，走多远？

问题：　只在 32 个位置上训练，到了 2 倍、4 倍、16 倍、32 倍长的地方，模型还会做同样的题吗？
先猜：　可学习的、正弦的、旋转的（RoPE）、ALiBi：哪一种一出去就不会了？RoPE 能走到 32 倍吗？（先想 10 秒，再运行）
看点：　① 两种编码长什么样；② 中上：两个位置的点积，正弦与 RoPE 一个样，都只由距离决定；③ 右上：准确率，虚线右边是没训练过的。
        ④ 中下是②、③之间的谜底：拿掉词元的差别，只看位置打的分，要抄的那一处比别处高多少。正弦先加到词元上，再过 W_query、W_key，
        矩阵一搅，就不再只由距离决定；RoPE 在两个矩阵之后才转，换个地方打的分也一样。⑤ RoPE 走得也有限：训练时没有过的距离上，分数没人管过，
        几百个远处的位置合起来分走了权重；只许看最近 32 个，就又全对。位置插值把长的挤回训练过的范围，可是相邻的也挤近了，要微调才认得。
动手改：1. --distance 6：隔得更远才抄，难学一些；RoPE 在 2 倍处仍比可学习的错得少。
        2. 把 ROPE_BASE 改成 20：每一对都转得快了，中上那幅图里 RoPE 的点积几步就掉到 0 附近，不再与正弦重合；训练过的长度里，题照样会做。
        3. 把 encode_rope 里的 / stretch 换成 * 0：什么位置也没有，RoPE 与"不用位置"一个样，第一、二条自查仍是 ✓（转 0 度也是旋转）。

运行：
    python ch02/experiments/exp_positional_encoding.py             # 图片写到 ch02/outputs/
    python ch02/experiments/exp_positional_encoding.py --quick
    约 60 秒，1.0 GB（2 核 CPU）；训练过的存着，再运行就立刻出结果

形状记号：b 批大小　t 序列长度　d 嵌入维度　V 词表大小
"""

import argparse
import hashlib
import json
import math
import os
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
TRAINED, LONGEST = 32, 1024  # 训练时 32 个位置，检验时最长 1024 个
# 检验时分段看：名字 → 哪些位置。因果掩码下，前 64 个位置看不到后面，所以一条 1024 长的就能看出各种长度。
SPANS = {"训练过的": (0, 32), "2 倍": (32, 64), "4 倍": (64, 128), "16 倍": (256, 512), "32 倍": (512, 1024)}
VOCAB_SIZE, DIM = 16, 64
ROPE_BASE = 10_000  # 越大，转得最慢的那一对转得越慢，能分辨的距离越远；GPT-2 之后的模型多用 1 万到 100 万
ALIBI_SLOPE = 0.5  # 每隔远一个位置，分数减这么多；论文里各个头的斜率不同，这里只有一个头
KINDS = {"learned": "可学习（GPT-2）", "sinusoidal": "正弦", "rope": "RoPE", "alibi": "ALiBi", "none": "不用位置"}
TUNE, TUNE_STEPS = 64, 150  # 微调用的长度和步数
# 99% 区间的半宽，是标准误的几倍：个数 → 学生 t 分布的分位数（统计书后面都有这张表）。次数越少，对"散得多开"越没把握，倍数就越大。


# region 沿用 ch04/experiments/exp_seed_noise.py: side_by_side, paired_interval, verdict, draw_differences
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


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def angles_of(length, dim, base):
    """位置 m、第 i 对维度的角度：m / base^(2i/d)。前面的对转得快，像秒针；后面的转得慢，像时针。

    参数:
        length (int): 多少个位置
        dim (int): 维度 d，偶数
        base (float): 底数

    返回:
        Tensor: 角度，(t, d/2)
    """
    speeds = base ** (-torch.arange(0, dim, 2) / dim)  # (d/2,)
    return torch.outer(torch.arange(length).float(), speeds)  # (t, d/2)


def sinusoidal_table(length, dim):
    """正弦位置编码：偶数维是 sin，奇数维是 cos，直接加到词嵌入上，不用训练。

    参数:
        length (int): 多少个位置
        dim (int): 维度 d

    返回:
        Tensor: 编码，(t, d)

    出处: Vaswani et al., Attention Is All You Need, 2017，3.5 节
    """
    angles = angles_of(length, dim, 10_000)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)  # (t, d)


def encode_rope(x, stretch=1.0):
    """旋转位置编码（RoPE）：不加到嵌入上，而是把查询和键的每一对维度转一个角度；点积只剩下角度之差，也就是距离。

    这里相邻的两维是一对（论文的写法）；Llama 和 Hugging Face 的代码把第 i 维与第 i + d/2 维配成一对。两种都对，权重却不能混用。

    参数:
        x (Tensor): 查询或键，(b, t, d)
        stretch (float): 位置插值（position interpolation）：位置都除以它，长的就挤回了训练过的范围；1 表示不插值

    返回:
        Tensor: 转过的，(b, t, d)

    出处: Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding, 2021；插值见 Chen et al., Extending Context Window of Large Language Models via Positional Interpolation, 2023
    """
    angles = angles_of(x.shape[1], x.shape[2], ROPE_BASE) / stretch
    even, odd = x[..., ::2], x[..., 1::2]  # (b, t, d/2)
    turned = [even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos()]
    return torch.stack(turned, dim=-1).flatten(2)  # (b, t, d)


class Copier(nn.Module):
    """一层注意力的小模型：每个位置猜"前面第 k 个词元是什么"，只有知道位置才做得对。

    参数:
        kind (str): KINDS 里的一种
    """

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.tok_emb = nn.Embedding(VOCAB_SIZE, DIM)
        self.pos_emb = nn.Embedding(LONGEST, DIM)  # 只有 learned 用它；32 号以后的行从没训练过
        self.register_buffer("table", sinusoidal_table(LONGEST, DIM))
        self.W_query = nn.Linear(DIM, DIM, bias=False)
        self.W_key = nn.Linear(DIM, DIM, bias=False)
        self.W_value = nn.Linear(DIM, DIM, bias=False)
        # 读答案用两层：ALiBi 的一个头只会"近的多、远的少"，谁在第几个写在权重的大小里，一个线性层读不出来（见 ch03 的 exp_head_count.py）
        self.out_head = nn.Sequential(nn.Linear(DIM, 4 * DIM), nn.GELU(), nn.Linear(4 * DIM, VOCAB_SIZE))

    def scores(self, x, stretch=1.0):
        """每个位置给每个位置打的分，还没有遮住未来。

        参数:
            x (Tensor): 词嵌入，learned 和 sinusoidal 的已加上位置，(b, t, d)
            stretch (float): RoPE 的位置插值，见 encode_rope

        返回:
            Tensor: 分数，(b, t, t)
        """
        queries, keys = self.W_query(x), self.W_key(x)  # (b, t, d)
        if self.kind == "rope":
            queries, keys = encode_rope(queries, stretch), encode_rope(keys, stretch)
        scores = queries @ keys.transpose(1, 2) / DIM**0.5  # (b, t, t)
        if self.kind == "alibi":  # 不编码位置，只按距离扣分（Press et al., 2022）
            places = torch.arange(x.shape[1])
            scores = scores - ALIBI_SLOPE * (places[:, None] - places)
        return scores

    def add_position(self, x):
        """先加到词嵌入上的那两种，在这里加。

        参数:
            x (Tensor): 词嵌入，(b, t, d)

        返回:
            Tensor: (b, t, d)
        """
        tables = {"learned": self.pos_emb.weight, "sinusoidal": self.table}
        return x + tables[self.kind][: x.shape[1]] if self.kind in tables else x

    def forward(self, idx, stretch=1.0, window=LONGEST):
        """前向传播。

        参数:
            idx (Tensor): 词元编号，(b, t)
            stretch (float): 见 scores
            window (int): 只许看最近几个位置

        返回:
            tuple[Tensor, Tensor]: 每个位置的分数 (b, t, V)；注意力权重 (b, t, t)
        """
        x = self.add_position(self.tok_emb(idx))  # (b, t, d)
        allowed = torch.ones(idx.shape[1], idx.shape[1], dtype=torch.bool).tril().triu(1 - window)  # (t, t)
        weights = self.scores(x, stretch).masked_fill(~allowed, -torch.inf).softmax(dim=-1)  # (b, t, t)
        return self.out_head(weights @ self.W_value(x)), weights  # (b, t, V)，(b, t, t)


def fit(model, distance, length, steps, rate, generator, stretch=1.0):
    """训练（或接着微调）一个 Copier。

    参数:
        model (Copier): 模型
        distance (int): 抄前面第几个
        length (int): 每个样本多长
        steps (int): 几步
        rate (float): 学习率
        generator (torch.Generator): 题目从哪里来
        stretch (float): RoPE 的位置插值
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)  # 衰减会动没训练过的行，这里关掉
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (0.5 + 0.5 * math.cos(math.pi * step / steps))  # 余弦衰减：收尾时走小步，停得稳
        idx = torch.randint(0, VOCAB_SIZE, (32, length), generator=generator)  # (b, t)
        logits = model(idx, stretch)[0][:, distance:]  # (b, t - k, V)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), idx[:, :-distance].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def examine(model, distance, length, n, seed, **options):
    """每个位置上的准确率。

    参数:
        model (Copier): 模型
        distance (int): 抄前面第几个
        length (int): 多长
        n (int): 考几条
        seed (int): 考题
        **options: 交给 model 的 stretch、window

    返回:
        tuple[list[float], float]: 每个位置的准确率，前 distance 个没有答案，是 nan；后一半的位置上，权重有几成落在训练时没有过的距离上
    """
    generator = torch.Generator().manual_seed(seed + 1)
    idx = torch.randint(0, VOCAB_SIZE, (n, length), generator=generator)  # (b, t)
    right, strange = torch.zeros(length), 0.0
    for row in idx.split(1):  # 一条一条地考：1024 长的，一条的权重就有一百万个数
        logits, weights = model(row, **options)  # (1, t, V)，(1, t, t)
        right[distance:] += (logits[0, distance:].argmax(dim=-1) == row[0, :-distance]) / n
        strange += weights[0].tril(-TRAINED)[length // 2 :].sum(dim=-1).mean().item() / n
    return [math.nan] * distance + right[distance:].tolist(), strange


@torch.no_grad()
def margins(model, distance):
    """只看位置打的分：每个位置都放平均的词嵌入，要抄的那一处，比看得见的其余各处的最高分高多少。

    参数:
        model (Copier): 模型
        distance (int): 抄前面第几个

    返回:
        list[float]: 每个位置一个数，从第 distance 个起
    """
    x = model.add_position(model.tok_emb.weight.mean(dim=0).expand(1, LONGEST, DIM))  # (1, t, d)
    scores = model.scores(x)[0].masked_fill(torch.ones(LONGEST, LONGEST).triu(1).bool(), -torch.inf)  # (t, t)
    wanted = scores.diagonal(-distance).clone()  # (t - k,)
    scores.diagonal(-distance).fill_(-torch.inf)
    return (wanted - scores[distance:].max(dim=-1).values).tolist()


def span_mean(right, span):
    """一段位置上的平均准确率。

    参数:
        right (list[float]): 每个位置的准确率
        span (tuple[int, int]): 从哪里到哪里

    返回:
        float: 平均，没有答案的不算
    """
    return statistics.mean(value for value in right[slice(*span)] if not math.isnan(value))


def train_once(kind, distance, steps, n, seed):
    """训练一个，再到各种长度去考；RoPE 的再多考几样。

    参数:
        kind (str): 位置编码的种类
        distance (int): 抄前面第几个
        steps (int): 训练几步
        n (int): 考几条
        seed (int): 初始权重和题目；同一个种子，几种编码的初始权重和题目都相同

    返回:
        dict: "right" 每个位置的准确率；"margin" margins 的结果；RoPE 另有 "strange" 权重落在没见过的距离上的比例、"window" 只许看最近 32 个、"tune" 微调
    """
    torch.manual_seed(seed)
    model, generator = Copier(kind), torch.Generator().manual_seed(seed)
    fit(model, distance, TRAINED, steps, 3e-3, generator)
    right, strange = examine(model, distance, LONGEST, n, seed)
    result = {"right": right, "margin": margins(model, distance)}
    if kind != "rope":
        return result
    result |= {"strange": strange, "window": examine(model, distance, LONGEST, n, seed, window=TRAINED)[0], "tune": {}}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for name, stretch in (("不插值", 1.0), ("插值", TUNE / TRAINED)):
        model.load_state_dict(state)
        before = span_mean(examine(model, distance, TUNE, 4 * n, seed, stretch=stretch)[0], (TUNE // 2, TUNE))
        fit(model, distance, TUNE, max(1, TUNE_STEPS * steps // 400), 3e-3, generator, stretch)
        result["tune"][name] = [before, span_mean(examine(model, distance, TUNE, 4 * n, seed, stretch=stretch)[0], (TUNE // 2, TUNE))]
    return result


def draw(runs, differences, distance, quick, path):
    """左：正弦与 RoPE 用的角度表；中：点积、只看位置的分；右：准确率、与可学习的相减。

    参数:
        runs (dict): 种类 → 每个种子的 train_once 的结果
        differences (dict): 名字 → 每个种子的差
        distance (int): 抄前面第几个
        quick (bool): True 时不画区间
        path (Path): 图片写到哪里
    """
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.4), layout="constrained", width_ratios=(0.8, 1.1, 1.1))
    torch.manual_seed(0)
    table, random = sinusoidal_table(LONGEST, DIM), torch.randn(LONGEST, DIM)  # nn.Embedding 的初始值就是标准正态
    for axis, codes, title in ((axes[0, 0], random, "可学习：训练之前"), (axes[1, 0], table, "正弦：公式算出")):
        axis.imshow(codes[:96].numpy(), cmap="RdBu", vmin=-2.5, vmax=2.5, aspect="auto", interpolation="nearest")
        axis.axhline(TRAINED - 0.5, color="black", linestyle="--", linewidth=1)
        axis.set(xlabel="维度", ylabel="位置", title=title)
    gaps, turned = torch.arange(TRAINED), encode_rope(torch.ones(1, LONGEST, DIM) / DIM**0.5)[0]  # turned：(t, d)
    for name, vectors in (("learned", random), ("sinusoidal", table), ("rope", turned)):
        # 正弦与 RoPE 的两条线恰好重合：这里的向量每一对都一样长，点积都是各个转速的余弦取平均。所以 RoPE 只画点。
        for start, style in ((0, "-"), (20, ":")) if name != "rope" else ((0, "x"), (20, "+")):
            dots = vectors[start + gaps] @ vectors[start]  # (32,)
            axes[0, 1].plot(gaps, dots / dots[0], style, color=f"C{list(KINDS).index(name)}", label=f"{KINDS[name]}，从位置 {start} 算起")
    axes[0, 1].set(ylim=(-0.5, 1.9), xlabel="相隔几个位置", title="编码的点积（除以与自己的）")
    axes[0, 1].legend(fontsize=8)
    for i, (kind, name) in enumerate(KINDS.items()):
        right = torch.tensor([run["right"] for run in runs[kind]]).mean(dim=0)[distance:]  # (t - k,)
        smooth = right.unfold(0, 9, 1).mean(dim=-1)  # (n,)　每 9 个位置平均一次，免得全是毛刺
        axes[0, 2].plot(range(distance + 4, distance + 4 + len(smooth)), smooth, color=f"C{i}", label=name, linewidth=1)
        if kind in ("learned", "sinusoidal", "rope"):
            for run in runs[kind]:
                axes[1, 1].plot(range(distance, LONGEST), run["margin"], color=f"C{i}", linewidth=0.7, alpha=0.7, label=name if run is runs[kind][0] else None)
    for axis in (axes[0, 2], axes[1, 1]):
        axis.axvline(TRAINED, color="black", linestyle="--", linewidth=1)
        axis.set_xscale("log", base=2)
        axis.set_xticks([8, 32, 64, 128, 512, 1024], [8, 32, 64, 128, 512, 1024])
        axis.set_xlabel("位置（虚线右边没有训练过）")
    axes[0, 2].set(ylim=(0, 1.05), title=f"抄前面第 {distance} 个词元的准确率")
    axes[0, 2].legend(fontsize=8)
    axes[1, 1].axhline(0, color="0.6", linewidth=0.8)
    axes[1, 1].set_title("只看位置：要抄的那一处，比别处的最高分高多少")
    axes[1, 1].legend(fontsize=8)
    draw_differences(axes[1, 2], differences, quick)
    axes[1, 2].set(xlabel="错误率的差（往左是更低）", title="2 倍处，减去可学习的")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    """同一道题，五个模型，只有位置编码不同。"""
    parser = argparse.ArgumentParser(description="实验　位置编码")
    parser.add_argument("--distance", type=int, default=3, help="抄前面第几个词元，1 到 16（默认：3）")
    parser.add_argument("--steps", type=int, default=400, help="训练几步（默认：400）")
    parser.add_argument("--seeds", type=int, default=5, help="几个种子，5 到 10（默认：5）")
    parser.add_argument("--seed", type=int, default=123, help="第一个种子；各个种子是它乘 1000 再加 0、1、2 …（默认：123）")
    parser.add_argument("--quick", action="store_true", help="两个种子，各训练 15 步：看流程，不下结论")
    args = parser.parse_args()
    if not 1 <= args.distance <= 16:
        parser.error(f"--distance 应在 1 到 16 之间，不能是 {args.distance}")
    if not 1 <= args.steps <= 100_000 or not 5 <= args.seeds <= 10 or not 0 <= args.seed < 2**50:
        parser.error(f"--steps 应在 1 到 100000 之间，--seeds 在 5 到 10 之间，--seed 不能是负数，不能是 {args.steps}、{args.seeds} 和 {args.seed}")

    steps, n, seeds = (15, 2, 2) if args.quick else (args.steps, 24, args.seeds)
    seeds = [args.seed * 1000 + i for i in range(seeds)]
    print(f"训练 {steps} 步，每个样本 {TRAINED} 个位置，{len(seeds)} 个种子；题目：抄前面第 {args.distance} 个词元，瞎蒙的准确率是 {1 / VOCAB_SIZE:.0%}")
    cases = {kind: [(kind, args.distance, steps, n, seed) for seed in seeds] for kind in KINDS}
    results = side_by_side(train_once, sum(cases.values(), []), OUTPUTS / "exp_positional_encoding", workers=1 if args.quick else None)
    runs = {kind: [results[case] for case in each] for kind, each in cases.items()}

    right = {(kind, span): [span_mean(run["right"], SPANS[span]) for run in each] for kind, each in runs.items() for span in SPANS}
    print("\n准确率，各个种子的平均（长度是训练时的几倍）　　" + "　".join(SPANS))
    for kind, name in KINDS.items():
        print(f"  {name}　" + "　".join(f"{span} {statistics.mean(right[kind, span]):.0%}" for span in SPANS))
    print("\n错误率减去可学习的（同一个种子相减，平均 ± 99% 区间的半宽）")
    differences = {}
    for kind in list(KINDS)[1:]:
        line = f"  {KINDS[kind]}"
        for span in ("训练过的", "2 倍"):
            values = [a - b for a, b in zip(right["learned", span], right[kind, span])]
            mean, half = (statistics.mean(values), None) if args.quick else paired_interval(values)
            line += f"　{span} {mean:+.3f}" + ("" if args.quick else f" ± {half:.3f} {verdict(values)}")
        differences[KINDS[kind]] = values
        print(line)
    rope = runs["rope"]
    strange, window = statistics.mean(run["strange"] for run in rope), statistics.mean(span_mean(run["window"], SPANS["32 倍"]) for run in rope)
    tuned = {name: [statistics.mean(run["tune"][name][i] for run in rope) for i in (0, 1)] for name in rope[0]["tune"]}
    print(f"\nRoPE 走到 32 倍：权重有 {strange:.0%} 落在训练时没有过的距离上；只许看最近 {TRAINED} 个位置，准确率从 {statistics.mean(right['rope', '32 倍']):.0%}（{min(right['rope', '32 倍']):.0%}–{max(right['rope', '32 倍']):.0%}）变成 {window:.0%}")
    print(f"RoPE 走到 {TUNE // TRAINED} 倍（后一半的位置）：" + "；".join(f"{name} {a:.0%}，在这个长度上微调几步之后 {b:.0%}" for name, (a, b) in tuned.items()))
    draw(runs, differences, args.distance, args.quick, OUTPUTS / "positional_encoding.png")
    print(f"图已写到 {OUTPUTS / 'positional_encoding.png'}")

    if args.quick:
        print("\n训练太短：看流程，不下结论")
    else:
        able = [kind for kind in KINDS if min(right[kind, "训练过的"]) > 0.9]
        mean = {kind: [statistics.mean(right[kind, span]) for span in SPANS] for kind in KINDS}
        print(f"\n所以：训练过的长度里，每个种子都会做的有{'、'.join(KINDS[kind] for kind in able) or '（没有）'}。")
        for kind in able:
            lost = next((span for span, value in zip(SPANS, mean[kind]) if value < 0.9 * mean[kind][0]), None)
            print(f"　　　{KINDS[kind]}：" + (f"到 {lost}处，准确率就不到原来的九成。" if lost else "到 32 倍，准确率还有原来的九成。"))
        print("　　　真正的 GPT-2 一超过 1024 就报错；这道题只要盯住一处，真正的任务更难，RoPE 的模型一出训练长度往往就变差，所以才有插值和微调。")

    print("\n这个数字对吗？")
    vector = torch.randn(1, 1, DIM)
    turned = encode_rope(vector.expand(1, LONGEST, DIM))[0]  # (t, d)
    dots = torch.stack([turned[start] @ turned[start + 7] for start in range(LONGEST - 7)])  # (t - 7,)
    confirm(f"RoPE：任意向量，相隔 7 个位置的点积都一样（相差 {(dots.max() - dots.min()).item():.0e}）", (dots.max() - dots.min()).item() < 1e-4 * DIM, "sin 与 cos 的正负号写错了")
    confirm("RoPE 只转不拉：长度不变", torch.allclose(turned.norm(dim=-1), vector.norm().expand(LONGEST), rtol=1e-4), "cos²+sin² 不等于 1，角度用错了")
    table = sinusoidal_table(LONGEST, DIM)
    confirm("正弦：每个位置的编码长度都是 √(d/2)", torch.allclose(table.norm(dim=-1), torch.full((LONGEST,), (DIM / 2) ** 0.5), rtol=1e-4), "sin 与 cos 没有成对")
    torch.manual_seed(args.seed)
    model = Copier("learned")
    before = model.pos_emb.weight[TRAINED:].clone()
    fit(model, args.distance, TRAINED, 3, 3e-3, torch.Generator())
    confirm(f"可学习的：{TRAINED} 号以后的行，训练时一个数也没变", torch.equal(before, model.pos_emb.weight[TRAINED:]), "训练时用到了更长的样本，或权重衰减不是 0")


if __name__ == "__main__":
    main()
