"""第 3 章 · 实验　头多一点，好在哪里？是不是越多越好？

问题：　每个位置要同时说出前面第 1、2、3、5 个符号各是什么。嵌入维度不变，几个头才做得到？一个头真的做不到吗？
先猜：　一个头只有一行权重，能不能分清四处谁是谁？如果不能，缺的是头，还是读答案的那一层？（先想 10 秒，再运行）
看点：　① 参数一个也没多，差别全在"怎么分"：左上图是几种头数的损失，几个种子；中间是与头数正好的相减，每个种子一个点；
        ② 一个头可以给四处四个不同的权重，谁是谁其实都写在上下文向量里，只是混在一起；右上图：线性层读不出来，练得再久也慢，
        换成两层的就读得出来。所以多个头的好处是"让后面好读、学得快"，不是"一个头装不下"；③ 下面一排：头数正好时，每个头各盯哪里。
动手改：1. --look 1 --steps 60：只看一处，一个头就是正好的。
        2. --look 2：比的换成两个头的；一个头知道是哪两个符号，不容易分清先后，200 步时准确率在六成上下，换两层来读，再练久一点，就全分清了。
        3. 把 READOUTS 里的 GELU() 换成 Identity()：两层之间没有激活函数，合起来还是一个线性层；右上图的两束线靠到一起。

运行：
    python ch03/experiments/exp_head_count.py            # 图片写到 ch03/outputs/
    python ch03/experiments/exp_head_count.py --quick
    约 60 秒，1.0 GB（2 核 CPU）；训练过的存着，再运行就立刻出结果

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　k 每个头的维度（k = d / h）　V 有几种符号
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
PLACES = (1, 2, 3, 5)  # 要看前面的第几个
V, T = 8, 24
READOUTS = {  # 注意力之后，怎样读出答案：名字 → 建这一层的函数
    "线性": lambda d, out: nn.Linear(d, out),
    "两层": lambda d, out: nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, out)),
}
LONGER = 2  # 一个头的，再多练几倍的步数
# 99% 区间的半宽，是标准误的几倍：个数 → 学生 t 分布的分位数（统计书后面都有这张表）。次数越少，对"散得多开"越没把握，倍数就越大。


# region 改写 ch03/main: MultiHeadAttention
class MultiHeadAttention(nn.Module):
    """带因果掩码的多头自注意力，外加记住最近一次的注意力权重。（原版详解见 ch03/main/example_05_multihead_attention.py）"""

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
        self.last_weights = None  # 改：多留一个出口，把注意力权重交给画图和统计的代码

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
        self.last_weights = weights.detach()  # 改：detach 断开计算图，否则整张图会被一直留在内存里
        weights = self.dropout(weights)
        context = (weights @ values).transpose(1, 2)  # (b, t, h, k)
        context = context.contiguous().view(b, t, self.d_out)  # (b, t, d_out)
        return self.out_proj(context)


# endregion


# region 沿用 ch04/experiments/exp_seed_noise.py: milestones, side_by_side, paired_interval, verdict, draw_differences
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


class Recall(nn.Module):
    """只有一层注意力的模型：在每个位置，说出前面各处的符号。

    参数:
        d (int): 嵌入维度
        h (int): 头数
        look (int): 要看几处，取 PLACES 的前几个
        readout (str): 怎样读出答案，READOUTS 的键

    形状:
        输入 (b, t) → 输出 (b, t, look, V)
    """

    def __init__(self, d, h, look, readout):
        super().__init__()
        self.tok_emb = nn.Embedding(V, d)
        self.pos_emb = nn.Embedding(T, d)
        self.att = MultiHeadAttention(d, d, T, 0.0, h)
        self.out_head = READOUTS[readout](d, look * V)

    def forward(self, in_idx):
        """前向传播；故意不加残差连接，一切信息都得靠注意力搬过来。

        参数:
            in_idx (Tensor): 符号，(b, t)

        返回:
            Tensor: 各处各符号的 logits（未归一化的分数），(b, t, look, V)
        """
        x = self.tok_emb(in_idx) + self.pos_emb.weight[: in_idx.shape[1]]  # (b, t, d)
        return self.out_head(self.att(x)).unflatten(-1, (-1, V))  # (b, t, look, V)


def questions(n, places, generator):
    """出 n 道题：随机的符号串，每个位置的答案是前面各处的符号。

    参数:
        n (int): 几串
        places (tuple[int]): 要看前面的第几个
        generator (torch.Generator): 随机数从哪里来

    返回:
        tuple[Tensor, Tensor]: 符号 (b, t)；答案 (b, t - first, look)，开头几个没有那么多前文，不考
    """
    symbols = torch.randint(V, (n, T), generator=generator)  # (b, t)
    first = max(places)
    answers = torch.stack([symbols[:, first - place : T - place] for place in places], dim=-1)  # (b, t - first, look)
    return symbols, answers


def train_once(heads, readout, look, d, steps, seed):
    """训练一个 Recall。题目随机、做不完，所以训练损失就是没见过的题的损失，不用另备验证集。

    参数:
        heads (int): 头数
        readout (str): 怎样读出答案
        look (int): 要看几处
        d (int): 嵌入维度
        steps (int): 几步
        seed (int): 初始权重和题目；同一个种子，几种头数的初始权重和题目都相同

    返回:
        dict: "curve" 损失的曲线，每项是步数和这一段的平均损失；"accuracy" 另出 256 串来考的准确率；"weights" 平均的注意力权重 (h, t, t)
    """
    torch.manual_seed(seed)
    model, places, generator = Recall(d, heads, look, readout), PLACES[:look], torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    curve, recent = [], []
    for step in range(1, steps + 1):
        symbols, targets = questions(32, places, generator)
        logits = model(symbols)[:, max(places) :]  # (b, t - first, look, V)
        loss = nn.functional.cross_entropy(logits.flatten(0, 2), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recent.append(loss.item())
        if not curve or step % max(1, steps // 20) == 0 or step == steps:
            curve.append((step, statistics.mean(recent)))
            recent = []
    with torch.no_grad():
        symbols, targets = questions(256, places, generator)
        accuracy = (model(symbols)[:, max(places) :].argmax(dim=-1) == targets).float().mean().item()
    # 一批里平均：看的是位置，与符号无关。头多的不画，不必存；存的是 (h, t, t) 的列表。
    weights = model.att.last_weights.mean(dim=0).tolist() if heads <= 8 else None
    return {"curve": curve, "accuracy": accuracy, "weights": weights}


def gaze(weights):
    """一个头平均把多少权重给了前面第 0、1、2 … 个。

    参数:
        weights (Tensor): 权重，(t, t)

    返回:
        list[float]: 下标是往前数几个，0 是自己；只统计前文够长的那些行
    """
    return [weights.diagonal(-back)[max(PLACES) - back :].mean().item() for back in range(max(PLACES) + 1)]


def favourites(weights):
    """每个头最爱看前面第几个。

    参数:
        weights (Tensor): 权重，(h, t, t)

    返回:
        list[tuple[int, float]]: 每个头一项：前面第几个，占几成
    """
    shares = [gaze(each) for each in weights]
    return [(max(range(len(share)), key=share.__getitem__), max(share)) for share in shares]


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def draw(curves, differences, longer, weights, quick, path):
    """上排：各头数的损失、与头数正好的相减、一个头练久一点；下排：头数正好的那个模型，每个头在看哪里。

    参数:
        curves (dict[str, list]): 名字 → 几个种子的曲线
        differences (dict[str, list[float]]): 名字 → 每个种子的差
        longer (dict[str, list]): 头数和读法 → 几个种子的曲线
        weights (Tensor): 下排的权重，(h, t, t)
        quick (bool): True 时不画区间
        path (Path): 图片写到哪里
    """
    figure = plt.figure(figsize=(12, 7), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.3, 1))
    left, middle, right = top.subplots(1, 3, width_ratios=(1.1, 1, 1.1))
    for axis, group in ((left, curves), (right, longer)):
        for i, (name, runs) in enumerate(group.items()):
            for curve in runs:
                color = plt.get_cmap("viridis")(i / len(group)) if axis is left else ("tab:red", "tab:blue", "tab:green")[i]
                axis.plot(*zip(*curve), color=color, linewidth=1, alpha=0.7, label=name if curve is runs[0] else None)
        axis.set_ylim(0, 2.3)
        axis.set_xlabel("步")
        axis.legend(frameon=False, fontsize=8)
    left.set_title("损失：几种头数，线性读出")
    right.set_title("损失：换一种读法，多练几倍")
    draw_differences(middle, differences, quick)
    middle.set_xlabel("最低损失的差（往左是更低）")
    middle.set_title("减去头数正好的")
    future = torch.ones(T, T).triu(1).bool()
    colors = plt.get_cmap("Blues").with_extremes(bad="0.85")
    for i, (axis, (back, share)) in enumerate(zip(bottom.subplots(1, len(weights), squeeze=False)[0], favourites(weights))):
        axis.imshow(weights[i].masked_fill(future, torch.nan).numpy(), cmap=colors, vmin=0, vmax=1)
        axis.set_title(f"第 {i + 1} 个头：前 {back} 个 {share:.0%}" if back else f"第 {i + 1} 个头：自己 {share:.0%}", fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
    bottom.supxlabel("行：谁在看　列：看谁　灰色：未来，被掩码挡住", fontsize=10)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def describe(runs, reference, quick):
    """一种变体减去参照：学得快不快，最后低不低。

    参数:
        runs (list[dict]): 这种变体，每个种子一个 train_once 的结果
        reference (list[dict]): 参照的
        quick (bool): True 时只说差多少

    返回:
        tuple[str, list[float]]: 一句话；最低损失的差，每个种子一个
    """
    pairs = [(milestones(a["curve"]), milestones(b["curve"])) for a, b in zip(runs, reference)]
    early, low = ([a[which] - b[which] for a, b in pairs] for which in (0, 1))
    if quick:
        return f"四分之一时 {statistics.mean(early):+.2f}　最低的 {statistics.mean(low):+.2f}", low
    words = []
    for title, differences in (("四分之一时", early), ("最低的", low)):
        mean, half = paired_interval(differences)
        words.append(f"{title} {mean:+.3f} ± {half:.3f} {verdict(differences)}")
    return "　".join(words), low


def main():
    """同样的题、同样的维度，只改头数；再让一个头的多练几倍，只改读答案的那一层。"""
    parser = argparse.ArgumentParser(description="实验　头数多少合适")
    parser.add_argument("--look", type=int, default=4, help="要看几处，1 到 4（默认：4）")
    parser.add_argument("--dim", type=int, default=64, help="嵌入维度，4 的倍数（默认：64）")
    parser.add_argument("--steps", type=int, default=200, help="每种头数训练几步（默认：200）")
    parser.add_argument("--seeds", type=int, default=5, help="几个种子，5 到 10（默认：5）")
    parser.add_argument("--seed", type=int, default=123, help="第一个种子；各个种子是它乘 1000 再加 0、1、2 …（默认：123）")
    parser.add_argument("--quick", action="store_true", help="只试 1、2、4 个头，两个种子，各 30 步：看流程，不下结论")
    args = parser.parse_args()
    if not 1 <= args.look <= len(PLACES):
        parser.error(f"--look 应在 1 到 {len(PLACES)} 之间，不能是 {args.look}")
    if not 4 <= args.dim <= 1024 or args.dim % 4:
        parser.error(f"--dim 应是 4 到 1024 之间的 4 的倍数，才能分给 4 个头，不能是 {args.dim}")
    if args.steps < 20 or not 5 <= args.seeds <= 10 or not 0 <= args.seed < 2**50:
        parser.error(f"--steps 至少是 20，--seeds 应在 5 到 10 之间，--seed 不能是负数，不能是 {args.steps}、{args.seeds} 和 {args.seed}")
    steps, seeds, longest = (min(args.steps, 20), 2, 40) if args.quick else (args.steps, args.seeds, LONGER * args.steps)
    seeds, look, d = [args.seed * 1000 + i for i in range(seeds)], args.look, args.dim
    counts = [h for h in (1, 2, 4) + (() if args.quick else (32,)) if d % h == 0]
    fit = min((h for h in counts if h >= look), default=counts[-1])  # 头数正好的那个
    print(f"题目：{V} 种符号，说出前面第 {'、'.join(map(str, PLACES[:look]))} 个各是什么；乱猜的准确率是 {1 / V:.1%}")

    short = {h: [(h, "线性", look, d, steps, seed) for seed in seeds] for h in counts}
    pairs = dict.fromkeys([(1, "线性"), (1, "两层"), (fit, "两层")])
    long = {(h, readout): [(h, readout, look, d, longest, seed) for seed in seeds] for h, readout in pairs}
    results = side_by_side(train_once, [*sum(long.values(), []), *sum(short.values(), [])], OUTPUTS / "exp_head_count", workers=1 if args.quick else None)
    runs = {h: [results[case] for case in cases] for h, cases in short.items()}
    longer = {pair: [results[case] for case in cases] for pair, cases in long.items()}

    print(f"\n① 只改头数：{len(seeds)} 个种子，{steps} 步，线性读出；损失减去 {fit} 个头的（同一个种子相减，平均 ± 99% 区间的半宽）")
    differences = {}
    for h in counts:
        right = [run["accuracy"] for run in runs[h]]
        text, low = describe(runs[h], runs[fit], args.quick)
        print(f"{h:4} 个头，每个 {d // h:2} 维　准确率 {statistics.mean(right):4.0%}（{min(right):.0%}–{max(right):.0%}）　" + ("参照" if h == fit else text))
        if h != fit:
            differences[f"{h} 个头"] = low
    spots = [favourites(torch.tensor(run["weights"])) for run in runs[fit]]
    found = [len({back for back, _ in each} & set(PLACES[:look])) for each in spots]
    print(f"  {fit} 个头最爱看的地方，合起来覆盖了几处要看的（每个种子一个数）：{'、'.join(map(str, found))}，要看 {look} 处")

    print(f"\n② 多练几倍（{longest} 步），换读答案的那一层；两层的参数和运算多一些")
    for (h, readout), each in longer.items():
        right, size = [run["accuracy"] for run in each], sum(p.numel() for p in Recall(d, h, look, readout).parameters())
        text = "参照" if readout == "线性" else describe(each, longer[1, "线性"], args.quick)[0]
        print(f"  {h} 个头，{readout}　参数 {size:,}　准确率 {statistics.mean(right):4.0%}（{min(right):.0%}–{max(right):.0%}）　{text}")
    path = OUTPUTS / "head_count.png"
    lines = {f"{h} 个头": [run["curve"] for run in each] for h, each in runs.items()}
    draw(lines, differences, {f"{h} 个头，{name}读出": [run["curve"] for run in each] for (h, name), each in longer.items()}, torch.tensor(runs[fit][0]["weights"]), args.quick, path)
    print(f"图已写到 {path}")

    if args.quick:
        print("\n训练太短：看流程，不下结论")
    else:
        low = {name: verdict(values) for name, values in differences.items()}
        for word in ("更高", "分不出", "更低"):
            names = [name for name, each in low.items() if each == word]
            if names:
                print(f"\n所以：{steps} 步时，与 {fit} 个头的比，最低损失{word}的有 {'、'.join(names)}。" if word == "更高" else f"　　　{word}的有 {'、'.join(names)}。")
        linear, deep = (min(run["accuracy"] for run in longer[1, readout]) for readout in ("线性", "两层"))
        print(f"　　　一个头练到 {longest} 步，最差的种子：线性读出 {linear:.0%}，两层读出 {deep:.0%}。", end="")
        print(f"{look} 处的符号一个头就装得下，读不出来的是线性层。" if deep > 0.9 > linear else "")

    print("\n这个数字对吗？")
    sizes = {sum(p.numel() for p in Recall(d, h, look, "线性").att.parameters()) for h in counts}
    confirm(f"不论几个头，注意力都是 4d² + d = {4 * d**2 + d:,} 个参数", sizes == {4 * d**2 + d}, "每个头各给了一套 d × d 的矩阵")
    begin = [run["curve"][0][1] for each in runs.values() for run in each]
    confirm(f"刚开始，损失都接近 ln {V} = {math.log(V):.2f}（{min(begin):.2f} 到 {max(begin):.2f}）", all(abs(each - math.log(V)) < 0.5 for each in begin), "初始权重太大")
    weights = torch.tensor(runs[fit][0]["weights"])  # (h, t, t)
    rows = weights.sum(dim=-1)
    confirm("每个头的每一行之和为 1，右上角为 0", torch.allclose(rows, torch.ones_like(rows), atol=1e-5) and weights.triu(1).sum().item() == 0, "softmax 的 dim 不对，或掩码没有生效")


if __name__ == "__main__":
    main()
