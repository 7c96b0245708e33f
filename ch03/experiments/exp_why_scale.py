"""第 3 章 · 实验　为什么偏偏除以 √k？

问题：　注意力分数不除、除以 √k、除以 k，softmax 的权重和它传回来的梯度各差多少？真训练起来呢？
先猜：　k = 1024 时，不除的话，64 个键里权重最大的那个能分到多少？除以 k 又是多少？（先想 10 秒，再运行）
看点：　① 分数的标准差：不除是 √k，除以 √k 总是 1，除以 k 是 1/√k；② 左上图：不除就「赢者通吃」，除以 k 就人人平分，谁也挑不出来；
        ③ 传回查询的梯度 = softmax 传回分数的 × 分数传回查询的。后一段只是公式里的 1 ÷ 除数（再乘键的长度），AdamW 会把这种整体的倍数除掉；
        前一段才说明 softmax 还灵不灵：右上图，不除的，中位数越来越接近 0，平均数却还撑着，因为偶尔有两个键几乎打平，梯度都出在这几题上；
        ④ 下面：同一个查找任务，几个种子。√k 的道理只管刚开始、Q 和 K 互不相干的时候；学会之后两者相关了，点积按 k 变大。有一派（μP）就主张除以 k。
动手改：1. --dim 16：k 小的时候，不除的也学得会，只是慢一点；所以书上的小例子（k = 2、k = 1）看不出来。
        2. 把 POWERS 里的 0.5 改成 0.25：左上图里它在不除与除以 √k 之间；中间两条自查变成 ✗。
        3. 把 Lookup 里两个 / d**0.5 改成 / (3 * d) ** 0.5（nn.Linear 默认的大小）：分数小了 3 倍；不除的还是学不动。

运行：
    python ch03/experiments/exp_why_scale.py            # 图片写到 ch03/outputs/
    python ch03/experiments/exp_why_scale.py --quick
    约 20 秒，1.0 GB（2 核 CPU）；训练过的存着，再运行就立刻出结果

出处：除以 √k 见 Vaswani 等，Attention Is All You Need，2017，3.2.1 节；除以 k 见 Yang 等，Tensor Programs V（μP），2022

形状记号：b 批大小　t 键有几个　k 查询和键的维度　d 嵌入维度　n 样本数
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
POWERS = {"不除": 0.0, "除以 √k": 0.5, "除以 k": 1.0}  # 分数 = q·k / k 的几次方
COLORS = {"不除": "#d9822b", "除以 √k": "#2f6fab", "除以 k": "0.5"}
KEYS = 64  # 每个查询面对几个键
SIZES = (1, 4, 16, 64, 256, 1024)
# 99% 区间的半宽，是标准误的几倍：个数 → 学生 t 分布的分位数（统计书后面都有这张表）。次数越少，对"散得多开"越没把握，倍数就越大。


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


def look(k, power, seed, n=500):
    """随机的查询和键（每个数的均值 0、方差 1），看 softmax 的前后。

    参数:
        k (int): 查询和键的维度
        power (float): 分数除以 k 的几次方
        seed (int): 随机种子；几种除法用同样的查询和键
        n (int): 几个查询

    返回:
        dict: "std" 分数的标准差；"top" 最大权重的平均；"softmax" 传回分数的梯度长度、"query" 传回查询的梯度长度，都是（平均，中位数）
    """
    torch.manual_seed(seed)
    queries = torch.randn(n, 1, k, requires_grad=True)
    keys = torch.randn(n, KEYS, k)
    scores = (queries @ keys.transpose(1, 2)).squeeze(1) / k**power  # (n, t)
    scores.retain_grad()  # 中间结果的梯度默认不留
    weights = torch.softmax(scores, dim=-1)  # (n, t)
    (weights * torch.randn(n, KEYS)).sum().backward()  # 随便给每个键一个"值"，看损失怎样传回查询
    lengths = {"softmax": scores.grad.norm(dim=-1), "query": queries.grad.squeeze(1).norm(dim=-1)}  # 各 (n,)
    found = {name: (each.mean().item(), each.median().item()) for name, each in lengths.items()}
    return {"std": scores.std().item(), "top": weights.max(dim=-1).values.mean().item()} | found


class Lookup(nn.Module):
    """最小的注意力，做一件事：在 32 个键里找到与查询相同的符号，取出它的值。

    参数:
        d (int): 嵌入维度
        k (int): 查询和键的维度
        power (float): 分数除以 k 的几次方
        kinds (int): 有几种值

    形状:
        符号 (b,)、键 (b, t)、值 (b, t) → 对值的 logits（未归一化的分数），(b, kinds)
    """

    def __init__(self, d, k, power, kinds=16):
        super().__init__()
        self.scale = k**power
        self.register_buffer("emb", torch.randn(64, d))  # 64 种符号，嵌入固定不训练，差别就只来自注意力
        # 这样的初始值，使查询和键的每个数方差都是 1，正是 √k 的道理所假设的。
        self.W_query = nn.Parameter(torch.randn(d, k) / d**0.5)
        self.W_key = nn.Parameter(torch.randn(d, k) / d**0.5)
        self.values = nn.Embedding(kinds, 32)
        self.out = nn.Linear(32, kinds)

    def forward(self, symbol, keys, values):
        """前向传播。

        参数:
            symbol (Tensor): 要找的符号，(b,)
            keys (Tensor): 各个键是什么符号，(b, t)
            values (Tensor): 各个键对应的值，(b, t)

        返回:
            Tensor: (b, kinds)
        """
        query = (self.emb[symbol] @ self.W_query).unsqueeze(1)  # (b, 1, k)
        scores = query @ (self.emb[keys] @ self.W_key).transpose(1, 2) / self.scale  # (b, 1, t)
        context = torch.softmax(scores, dim=-1) @ self.values(values)  # (b, 1, 32)
        return self.out(context.squeeze(1))  # (b, kinds)


def train_once(k, power, steps, seed):
    """训练一个 Lookup。题目随机、做不完，所以训练损失就是没见过的题的损失。

    参数:
        k (int): 查询和键的维度
        power (float): 分数除以 k 的几次方
        steps (int): 几步
        seed (int): 初始权重和题目；同一个种子，几种除法的都相同

    返回:
        list[tuple[int, float]]: 损失的曲线，每项是步数和这一段的平均损失；乱猜是 ln 16 = 2.77
    """
    torch.manual_seed(seed)
    model, curve, recent = Lookup(64, k, power), [], []
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(1, steps + 1):
        keys = torch.rand(64, 64).argsort(dim=-1)[:, :32]  # (b, t) = (64, 32)　每题 32 个不同的符号
        values = torch.randint(16, (64, 32))  # (b, t)
        place = torch.randint(32, (64, 1))  # (b, 1)　答案在第几个键
        symbol, answer = keys.gather(1, place)[:, 0], values.gather(1, place)[:, 0]  # (b,)，(b,)
        loss = nn.functional.cross_entropy(model(symbol, keys, values), answer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recent.append(loss.item())
        if not curve or step % max(1, steps // 20) == 0 or step == steps:
            curve.append((step, statistics.mean(recent)))
            recent = []
    return curve


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def draw(table, curves, differences, k, quick, path):
    """上排：随 k 变的最大权重、softmax 传回的梯度；下排：训练损失、与除以 √k 的相减。

    参数:
        table (dict[str, list[dict]]): 名字 → 各个 k 的 look 结果
        curves (dict[str, list]): 名字 → 每个种子的曲线
        differences (dict[str, list[float]]): 名字 → 每个种子的差
        k (int): 训练用的维度
        quick (bool): True 时不画区间
        path (Path): 图片写到哪里
    """
    figure, axes = plt.subplots(2, 2, figsize=(10.4, 7), layout="constrained")
    for name, color in COLORS.items():
        axes[0, 0].plot(SIZES, [row["top"] for row in table[name]], marker="o", markersize=4, color=color, label=name)
        for which, style, word in ((0, "--", "平均"), (1, "-", "中位数")):
            axes[0, 1].plot(SIZES, [row["softmax"][which] for row in table[name]], style, marker="o", markersize=4, color=color, label=f"{name}，{word}")
        for curve in curves[name]:
            axes[1, 0].plot(*zip(*curve), color=color, linewidth=1, alpha=0.8, label=name if curve is curves[name][0] else None)
    for axis in axes[0]:
        axis.set_xscale("log", base=2)
        axis.set_xticks(SIZES, SIZES)
        axis.set_xlabel("k")
        axis.legend(frameon=False, fontsize=8)
    axes[0, 0].set_ylim(0, 1)
    axes[0, 0].axhline(1 / KEYS, color="0.7", linewidth=0.8, linestyle=":")
    axes[0, 0].set_title(f"{KEYS} 个键里最大的权重")
    axes[0, 1].set_yscale("log")
    axes[0, 1].set_ylim(bottom=1e-4)
    axes[0, 1].set_title("softmax 传回分数的梯度（不含 1 ÷ 除数）")
    axes[1, 0].axhline(math.log(16), color="0.7", linewidth=0.8, linestyle=":")
    axes[1, 0].set_ylim(bottom=0)
    axes[1, 0].set_xlabel("步")
    axes[1, 0].set_title(f"查找任务的训练损失（k = {k}）")
    axes[1, 0].legend(frameon=False, fontsize=8)
    draw_differences(axes[1, 1], differences, quick)
    axes[1, 1].set_xlabel("损失的差（往左是更低）")
    axes[1, 1].set_title("减去除以 √k 的")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    """先看随机的分数，再真训练几次；几种只差一个除数。"""
    parser = argparse.ArgumentParser(description="实验　为什么除以 √k")
    parser.add_argument("--dim", type=int, default=256, help="训练时查询和键的维度 k（默认：256）")
    parser.add_argument("--steps", type=int, default=200, help="训练几步（默认：200）")
    parser.add_argument("--seeds", type=int, default=5, help="几个种子，5 到 10（默认：5）")
    parser.add_argument("--seed", type=int, default=123, help="第一个种子；各个种子是它乘 1000 再加 0、1、2 …（默认：123）")
    parser.add_argument("--quick", action="store_true", help="两个种子，各训练 20 步，k 不超过 64：训练只看流程，不下结论")
    args = parser.parse_args()
    if not 1 <= args.dim <= 65536:
        parser.error(f"--dim 应在 1 到 65536 之间，不能是 {args.dim}")
    if args.steps < 20 or not 5 <= args.seeds <= 10 or not 0 <= args.seed < 2**50:
        parser.error(f"--steps 至少是 20，--seeds 应在 5 到 10 之间，--seed 不能是负数，不能是 {args.steps}、{args.seeds} 和 {args.seed}")
    k, steps, seeds = (min(args.dim, 64), 20, 2) if args.quick else (args.dim, args.steps, args.seeds)
    seeds = [args.seed * 1000 + i for i in range(seeds)]

    print(f"① 随机的查询和 {KEYS} 个键（平分的话，每个键的权重是 {1 / KEYS:.3f}）；梯度写作 平均／中位数")
    table = {name: [look(size, power, args.seed, 200 if args.quick else 500) for size in SIZES] for name, power in POWERS.items()}
    for name, rows in table.items():
        print(f"  {name}\n     k　　除数　标准差　最大权重　 梯度：传回分数 　　传回查询")
        for size, row in zip(SIZES, rows):
            gradients = "　".join(f"{mean:.2g}／{median:.2g}".rjust(15) for mean, median in (row["softmax"], row["query"]))
            print(f"{size:6}{size ** POWERS[name]:8g}{row['std']:8.2f}{row['top']:9.3f}　{gradients}")

    print(f"\n② 查找任务：32 个键里找出相同的那个，k = {k}，{steps} 步，{len(seeds)} 个种子（乱猜的损失是 {math.log(16):.2f}）")
    cases = {name: [(k, power, steps, seed) for seed in seeds] for name, power in POWERS.items()}
    results = side_by_side(train_once, sum(cases.values(), []), OUTPUTS / "exp_why_scale", workers=1 if args.quick else None)
    curves = {name: [results[case] for case in each] for name, each in cases.items()}
    differences, said = {}, {}
    for name, each in curves.items():
        low = [milestones(curve)[1] for curve in each]
        line = f"  {name}　最低的损失 {statistics.mean(low):.3f}（{min(low):.3f}–{max(low):.3f}）"
        for which, title in enumerate(("四分之一时", "最低的")):
            values = [milestones(a)[which] - milestones(b)[which] for a, b in zip(each, curves["除以 √k"])]
            if name != "除以 √k":
                differences[f"{name}\n{title}"] = values
                said[name, title] = None if args.quick else verdict(values)
                line += f"　{title} {statistics.mean(values):+.3f}" + ("" if args.quick else f" ± {paired_interval(values)[1]:.3f} {verdict(values)}")
        print(line + ("　参照" if name == "除以 √k" else ""))
    path = OUTPUTS / "why_scale.png"
    draw(table, curves, differences, k, args.quick, path)
    print(f"图已写到 {path}")

    if args.quick:
        print("\n训练太短：看流程，不下结论")
    else:
        print(f"\n所以：各个 k，不除的梯度是除以 √k 的几倍（k = {'、'.join(map(str, SIZES))}）：")
        for part, title in (("softmax", "传回分数"), ("query", "传回查询")):
            for which, word in enumerate(("平均", "中位数")):
                print(f"　　　{title}，{word}　" + "、".join(f"{a[part][which] / b[part][which]:.2g}" for a, b in zip(table["不除"], table["除以 √k"])))
        for name in ("不除", "除以 k"):
            early, low = said[name, "四分之一时"], said[name, "最低的"]
            print(f"　　　训练（k = {k}），与除以 √k 的比：{name}，四分之一时的损失{early}，最低的损失{low}。")

    print("\n这个数字对吗？")
    worst = max(abs(row["std"] / size ** (0.5 - power) - 1) for name, power in POWERS.items() for size, row in zip(SIZES, table[name]))
    confirm(f"分数的标准差 = √k ÷ 除数（最多差 {worst:.1%}，应在 5% 以内）", worst < 0.05, "查询和键的方差不是 1")
    scaled = [row["top"] for row in table["除以 √k"][2:]]
    confirm(f"除以 √k，最大权重几乎不随 k 变（k ≥ 16：{min(scaled):.3f} 到 {max(scaled):.3f}）", max(scaled) / min(scaled) < 1.2, "忘了除，或除成了 k")
    medians = [row["softmax"][1] for row in table["除以 √k"][2:]]
    confirm(f"除以 √k，传回分数的梯度也几乎不随 k 变（k ≥ 16 的中位数：{min(medians):.3f} 到 {max(medians):.3f}）", max(medians) / min(medians) < 1.3, "忘了除，或除成了 k")
    begin = [curve[0][1] for each in curves.values() for curve in each]
    confirm(f"刚开始，损失都接近 ln 16 = 2.77（{min(begin):.2f} 到 {max(begin):.2f}）", all(abs(loss - 2.77) < 0.8 for loss in begin), "值的嵌入太大")


if __name__ == "__main__":
    main()
