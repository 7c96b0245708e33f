"""第 4 章 · 实验　叠到 64 层，梯度还剩多少？

问题：　从 2 层叠到 64 层，第一层收到的梯度是最后一层的几分之几？有没有残差连接、有没有层归一化，各差多少？
先猜：　每层的梯度打对折，64 层之后剩下 1/2⁶⁴，约 10⁻²⁰。真实的网络比这好，还是更糟？（先想 10 秒，再运行）
看点：　① 左上、右上两图，横轴是层数，纵轴是 10 的几次方：没有残差，每多一层就乘一个小于 1 的数，是一条往下的直线；② 只加一个加号，线就几乎平了；
        ③ 前面有层归一化的残差（pre-norm，GPT-2 的做法）：深到 64 层也不消失、不爆炸；④ 下面：真训练几次，几个种子，掉到底的那些学不动。
动手改：1. 把 Stack 里的 GELU() 换成 nn.Sigmoid()：没有残差的掉得更快（sigmoid 的斜率最大才 0.25）。
        2. 把 Stack 里的 else x + out 改成 else x + 0.1 * out：有残差的各条线更平，几乎贴在 1 上；第一条自查是照原来的写法算的，会变成 ✗。
        3. --init 1.7：把各层的初始权重放大 1.7 倍（约等于 He 初始化），没有残差的消失得慢了些；
           只加残差的首末之比更大了：主路上的向量越加越长，梯度也跟着爆炸，归一化正好治它。

运行：
    python ch04/experiments/exp_shortcut_gradients.py            # 图片写到 ch04/outputs/
    python ch04/experiments/exp_shortcut_gradients.py --quick
    约 30 秒，1.0 GB（2 核 CPU）；训练过的存着，再运行就立刻出结果

形状记号：b 批大小　d 每层的宽度
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
KINDS = ["没有残差", "有残差", "残差 + 归一化"]
COLORS = dict(zip(KINDS, ("#d9822b", "#6a9f4b", "#2f6fab")))
DEPTHS = (2, 4, 8, 16, 32, 64)
D = 64
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


# region 沿用 ch04/main: LayerNorm, GELU
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


# endregion


class Stack(nn.Module):
    """几层 Linear + GELU 叠起来，一层一样宽；可以选要不要残差连接（shortcut connection）和层归一化。

    参数:
        depth (int): 几层
        kind (str): KINDS 之一
        gain (float): 初始权重放大几倍；1 就是 nn.Linear 默认的大小

    形状:
        输入 (b, d) → 输出 (b, d)
    """

    def __init__(self, depth, kind, gain=1.0):
        super().__init__()
        self.kind = kind
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(D, D), GELU()) for _ in range(depth)])
        self.norms = nn.ModuleList([LayerNorm(D) for _ in range(depth)])  # 三种都建，随机数的次序才一样；用不用看 kind
        with torch.no_grad():
            for layer in self.layers:
                layer[0].weight.mul_(gain)

    def forward(self, x):
        """前向传播。

        参数:
            x (Tensor): (b, d)

        返回:
            Tensor: (b, d)
        """
        for layer, norm in zip(self.layers, self.norms):
            out = layer(norm(x) if self.kind == "残差 + 归一化" else x)  # (b, d)
            # y = x + f(x)，dy/dx = 1 + f'(x)：就算 f' 接近 0，连乘里的每一项也接近 1。
            x = out if self.kind == "没有残差" else x + out
        return x


def gradients(depth, kind, gain, seed=123):
    """一次反向传播，各层权重的梯度有多大。

    参数:
        depth (int): 几层
        kind (str): KINDS 之一
        gain (float): 初始权重放大几倍
        seed (int): 随机种子

    返回:
        list[float]: 各层梯度绝对值的平均，从第一层到最后一层
    """
    torch.manual_seed(seed)  # 同样深的三种网络，初始权重相同
    model = Stack(depth, kind, gain)
    (model(torch.randn(32, D)) * torch.randn(32, D)).mean().backward()  # 损失对输出是线性的：传回来的信号不随输出大小而变，只看网络
    return [layer[0].weight.grad.abs().mean().item() for layer in model.layers]


def train_once(depth, kind, gain, steps, seed):
    """真训练一次：学一个固定的、随机的小网络（老师），看损失降不降得下去。题目随机、做不完，训练损失就是没见过的题的损失。

    参数:
        depth (int): 几层
        kind (str): KINDS 之一
        gain (float): 初始权重放大几倍
        steps (int): 几步
        seed (int): 初始权重和题目；同一个种子，三种网络的都相同

    返回:
        list[tuple[int, float]]: 损失的曲线，每项是步数和这一段的平均损失，已除以目标的方差：一直猜平均值的损失是 1
    """
    torch.manual_seed(321)
    teacher = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D))
    torch.manual_seed(seed)
    # 头尾各一个线性层：归一化过的残差会越加越大，让最后一层自己调大小，三种网络才站在同一起跑线上。
    model = nn.Sequential(Stack(depth, kind, gain), LayerNorm(D), nn.Linear(D, D))
    optimizer, curve, recent = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), [], []
    for step in range(1, steps + 1):
        x = torch.randn(64, D)  # (b, d)
        with torch.no_grad():
            target = teacher(x)
        loss = nn.functional.mse_loss(model(x), target) / target.var()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # 梯度裁剪：一步不要走太远，否则看到的是发散，不是消失
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


def draw(ratios, layers, curves, differences, quick, path):
    """上排：首层与末层的梯度之比随深度怎样变，最深的网络里逐层的梯度；下排：训练损失，与残差 + 归一化的相减。

    参数:
        ratios (dict[str, list[float]]): 名字 → 各深度的首层 / 末层
        layers (dict[str, list[float]]): 名字 → 最深的网络各层的梯度
        curves (dict[str, list]): 名字 → 每个种子的曲线
        differences (dict[str, list[float]]): 名字 → 每个种子的差
        quick (bool): True 时不画区间
        path (Path): 图片写到哪里
    """
    figure, axes = plt.subplots(2, 2, figsize=(10.4, 7), layout="constrained")
    for name, color in COLORS.items():
        axes[0, 0].plot(DEPTHS, ratios[name], marker="o", markersize=4, color=color, label=name)
        axes[0, 1].plot(range(1, len(layers[name]) + 1), layers[name], color=color)
        for curve in curves[name]:
            axes[1, 0].plot(*zip(*curve), color=color, linewidth=1, alpha=0.8)
    axes[0, 0].axhline(1, color="0.7", linewidth=0.8)
    axes[0, 0].set_xticks(DEPTHS[2:], DEPTHS[2:])  # 横轴不取对数：一层乘一个数，才是直线
    axes[0, 0].set_xlabel("叠几层")
    axes[0, 0].set_title("第一层的梯度 ÷ 最后一层的")
    axes[0, 0].legend(frameon=False, loc="lower left")
    axes[0, 1].set_xlabel("第几层")
    axes[0, 1].set_title(f"{len(layers[KINDS[0]])} 层时各层的梯度")
    for axis in axes[0]:
        axis.set_yscale("log")
    axes[1, 0].set_xlabel("步")
    axes[1, 0].set_ylim(bottom=0)
    axes[1, 0].axhline(1, color="0.7", linewidth=0.8, linestyle=":")
    axes[1, 0].set_title("训练损失（一直猜平均值是 1）")
    draw_differences(axes[1, 1], differences, quick)
    axes[1, 1].set_xlabel("最低损失的差（往左是更低）")
    axes[1, 1].set_title(f"减去{KINDS[-1]}的")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    """量各种深度的梯度，再训练一次最能看出差别的。"""
    parser = argparse.ArgumentParser(description="实验　残差连接与梯度")
    parser.add_argument("--depth", type=int, default=32, help="训练几层的网络（默认：32）")
    parser.add_argument("--steps", type=int, default=150, help="训练几步（默认：150）")
    parser.add_argument("--init", type=float, default=1.0, help="初始权重放大几倍（默认：1，即 nn.Linear 默认的大小）")
    parser.add_argument("--seeds", type=int, default=5, help="几个种子，5 到 10（默认：5）")
    parser.add_argument("--seed", type=int, default=123, help="第一个种子；各个种子是它乘 1000 再加 0、1、2 …（默认：123）")
    parser.add_argument("--quick", action="store_true", help="两个种子，训练 8 层、20 步：训练只看流程，不下结论")
    args = parser.parse_args()
    if not 1 <= args.depth <= 256:
        parser.error(f"--depth 应在 1 到 256 之间，不能是 {args.depth}")
    if args.steps < 20:
        parser.error(f"--steps 至少是 20，不能是 {args.steps}")
    if not 0.1 <= args.init <= 3:
        parser.error(f"--init 应在 0.1 到 3 之间，不能是 {args.init}")
    if not 5 <= args.seeds <= 10 or not 0 <= args.seed < 2**50:
        parser.error(f"--seeds 应在 5 到 10 之间，--seed 不能是负数，不能是 {args.seeds} 和 {args.seed}")
    depth, steps, seeds = (min(args.depth, 8), 20, 2) if args.quick else (args.depth, args.steps, args.seeds)
    seeds = [args.seed * 1000 + i for i in range(seeds)]

    print("① 第一层的梯度是最后一层的多少倍\n叠几层" + "".join(f"{name:>14}" for name in KINDS))
    ratios, layers = {name: [] for name in KINDS}, {}
    for each in DEPTHS:
        for name in KINDS:
            layers[name] = gradients(each, name, args.init, args.seed)
            ratios[name].append(layers[name][0] / layers[name][-1] if layers[name][-1] else 0.0)
        print(f"{each:4}　" + "".join(f"{ratios[name][-1]:18.1e}" for name in KINDS))
    print(f"\n② 训练 {depth} 层，{steps} 步，{len(seeds)} 个种子（一直猜平均值的损失是 1）；减去{KINDS[-1]}的，平均 ± 99% 区间的半宽")
    cases = {name: [(depth, name, args.init, steps, seed) for seed in seeds] for name in KINDS}
    results = side_by_side(train_once, sum(cases.values(), []), OUTPUTS / "exp_shortcut_gradients", workers=1 if args.quick else None)
    curves = {name: [results[case] for case in each] for name, each in cases.items()}
    differences, said = {}, {}
    for name, each in curves.items():
        low = [milestones(curve)[1] for curve in each]
        line = f"  {name}　最低的损失 {statistics.mean(low):.3f}（{min(low):.3f}–{max(low):.3f}）"
        for which, title in enumerate(("四分之一时", "最低的")):
            values = [milestones(a)[which] - milestones(b)[which] for a, b in zip(each, curves[KINDS[-1]])]
            if name != KINDS[-1]:
                differences[name] = values
                said[name] = None if args.quick else verdict(values)
                line += f"　{title} {statistics.mean(values):+.3f}" + ("" if args.quick else f" ± {paired_interval(values)[1]:.3f} {verdict(values)}")
        print(line + ("　参照" if name == KINDS[-1] else ""))
    path = OUTPUTS / "shortcut_gradients.png"
    draw(ratios, layers, curves, differences, args.quick, path)
    print(f"图已写到 {path}")

    per_layer = {name: (ratios[name][-1] / ratios[name][0]) ** (1 / (DEPTHS[-1] - DEPTHS[0])) for name in KINDS}
    print(f"\n所以：从 {DEPTHS[0]} 层到 {DEPTHS[-1]} 层，每多一层，首末之比平均乘以 " + "、".join(f"{per_layer[name]:.2f}（{name}）" for name in KINDS) + "。")
    if args.quick:
        print("　　　训练太短：看流程，不下结论")
    else:
        print(f"　　　{depth} 层训练下来，最低的损失，与{KINDS[-1]}的比：" + "，".join(f"{name}{word}" for name, word in said.items()) + "。")

    print("\n这个数字对吗？")
    torch.manual_seed(123)
    plain, shortcut = (Stack(4, kind) for kind in KINDS[:2])
    shortcut.load_state_dict(plain.state_dict())
    x = torch.randn(3, D)
    with torch.no_grad():
        first = shortcut.layers[0](x)  # (3, d)
        by_hand = x + first
        for layer in shortcut.layers[1:]:
            by_hand = by_hand + layer(by_hand)
    confirm("有残差的输出 = 输入 + 每一层的输出", torch.allclose(shortcut(x), by_hand), "加的不是这一层的输入")
    if args.init <= 1:
        confirm("从 4 层起，深度越大，没有残差的首末之比越小", ratios["没有残差"][1:] == sorted(ratios["没有残差"][1:], reverse=True), "残差没有关掉")
    else:
        confirm("没有残差的首末之比有限", all(value < float("inf") for value in ratios["没有残差"]), "残差没有关掉")
    if args.init == 1:
        confirm(f"64 层时，没有残差的首末之比（{ratios['没有残差'][-1]:.0e}）不到有残差的（{ratios['有残差'][-1]:.0e}）的百万分之一", ratios["没有残差"][-1] < 1e-6 * ratios["有残差"][-1], "kind 没有传进去")


if __name__ == "__main__":
    main()
