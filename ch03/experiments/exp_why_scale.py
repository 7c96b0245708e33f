"""第 3 章 · 实验　为什么偏偏除以 √k？

问题：　注意力分数不除、除以 √k、除以 k，softmax 的权重和它传回来的梯度各差多少？真训练起来呢？
先猜：　k = 1024 时，不除的话，64 个键里权重最大的那个能分到多少？除以 k 又是多少？（先想 10 秒，再运行）
看点：　① 分数的标准差：不除是 √k，除以 √k 总是 1，除以 k 是 1/√k；② 左图：不除就「赢者通吃」，除以 k 就人人平分，谁也挑不出来；
        ③ 中图：不除的，梯度先涨后跌，最后几乎没有；除以 k 的一路变小；只有除以 √k 的与 k 无关；④ 右图：同一个查找任务，不除的学不动。另外两种谁快？想想为什么：
        √k 的道理只管刚开始、Q 和 K 互不相干的时候；学会之后两者相关了，点积按 k 变大。有一派（μP）就主张除以 k。
动手改：1. --dim 16：k 小的时候，不除的也学得会，只是慢一点；所以书上的小例子（k = 2、k = 1）看不出来。
        2. 把 POWERS 里的 0.5 改成 0.25：左图上它在不除与除以 √k 之间，右图上学得也慢；两条自查变成 ✗。
        3. 把 Lookup 里两个 / d**0.5 改成 / (3 * d) ** 0.5（nn.Linear 默认的大小）：分数小了 3 倍，除以 √k 的快了近一倍；不除的还是学不动。

运行：
    python ch03/experiments/exp_why_scale.py            # 图片写到 ch03/outputs/
    python ch03/experiments/exp_why_scale.py --quick
    约 19 秒，0.6 GB（2 核 CPU）

出处：除以 √k 见 Vaswani 等，Attention Is All You Need，2017，3.2.1 节；除以 k 见 Yang 等，Tensor Programs V（μP），2022

形状记号：b 批大小　t 键有几个　k 查询和键的维度　d 嵌入维度　n 样本数
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
POWERS = {"不除": 0.0, "除以 √k": 0.5, "除以 k": 1.0}  # 分数 = q·k / k 的几次方
KEYS = 64  # 每个查询面对几个键
SIZES = (1, 4, 16, 64, 256, 1024)


def look(k, power, n=1000):
    """随机的查询和键（每个数的均值 0、方差 1），看 softmax 的前后。

    参数:
        k (int): 查询和键的维度
        power (float): 分数除以 k 的几次方
        n (int): 几个查询

    返回:
        tuple[float, float, float]: 分数的标准差、最大权重的平均、传回查询的梯度长度的中位数
    """
    torch.manual_seed(123)  # 三种除法用同样的查询和键
    queries = torch.randn(n, 1, k, requires_grad=True)
    keys = torch.randn(n, KEYS, k)
    scores = (queries @ keys.transpose(1, 2)).squeeze(1) / k**power  # (n, t)
    weights = torch.softmax(scores, dim=-1)  # (n, t)
    (weights * torch.randn(n, KEYS)).sum().backward()  # 随便给每个键一个"值"，看损失怎样传回查询
    # 取中位数：饱和的 softmax 偶尔会碰上两个分数几乎相等，那时梯度很大，平均数会被这几次带偏。
    return scores.std().item(), weights.max(dim=-1).values.mean().item(), queries.grad.norm(dim=-1).median().item()


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


def train(k, power, steps, name):
    """训练一个 Lookup。

    参数:
        k (int): 查询和键的维度
        power (float): 分数除以 k 的几次方
        steps (int): 几步
        name (str): 进度条上的名字

    返回:
        list[float]: 每一步的损失；乱猜是 ln 16 = 2.77
    """
    torch.manual_seed(123)  # 三种除法，同样的初始值、同样的题
    model, losses = Lookup(64, k, power), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in tqdm(range(steps), desc=name, ncols=80, unit="步", leave=False, disable=None):
        keys = torch.rand(64, 64).argsort(dim=-1)[:, :32]  # (b, t) = (64, 32)　每题 32 个不同的符号
        values = torch.randint(16, (64, 32))  # (b, t)
        place = torch.randint(32, (64, 1))  # (b, 1)　答案在第几个键
        symbol, answer = keys.gather(1, place)[:, 0], values.gather(1, place)[:, 0]  # (b,)，(b,)
        loss = nn.functional.cross_entropy(model(symbol, keys, values), answer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def draw(table, curves, k, path):
    """三格：最大的权重、传回的梯度随 k 怎样变；训练损失。

    参数:
        table (dict[str, list[tuple]]): 名字 → 各个 k 的 look 结果
        curves (dict[str, list[float]]): 名字 → 每一步的损失
        k (int): 训练用的维度
        path (Path): 图片写到哪里
    """
    figure, axes = plt.subplots(1, 3, figsize=(10.8, 3.6), layout="constrained")
    for name, color, marker in zip(POWERS, ("#d9822b", "#2f6fab", "0.5"), "osd"):
        axes[0].plot(SIZES, [row[1] for row in table[name]], marker=marker, markersize=4, color=color, label=name)
        axes[1].plot(SIZES, [row[2] for row in table[name]], marker=marker, markersize=4, color=color)
        smooth = torch.tensor(curves[name]).unfold(0, 10, 1).mean(dim=-1)  # (n,)　每 10 步平均一次，免得全是毛刺
        axes[2].plot(range(10, 10 + len(smooth)), smooth, color=color)
    for axis in axes[:2]:
        axis.set_xscale("log", base=2)
        axis.set_xticks(SIZES, SIZES)
        axis.set_xlabel("k")
    axes[0].set_ylim(0, 1)
    axes[0].axhline(1 / KEYS, color="0.7", linewidth=0.8, linestyle=":")
    axes[0].set_title(f"{KEYS} 个键里最大的权重")
    axes[0].legend(frameon=False)
    axes[1].set_yscale("log")
    axes[1].set_title("传回查询的梯度（中位数）")
    axes[2].axhline(torch.log(torch.tensor(16.0)).item(), color="0.7", linewidth=0.8, linestyle=":")
    axes[2].set_ylim(bottom=0)
    axes[2].set_xlabel("步")
    axes[2].set_title(f"查找任务的训练损失（k = {k}）")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    """先看随机的分数，再真训练一次；三次只差一个除数。"""
    parser = argparse.ArgumentParser(description="实验　为什么除以 √k")
    parser.add_argument("--dim", type=int, default=1024, help="训练时查询和键的维度 k（默认：1024）")
    parser.add_argument("--steps", type=int, default=400, help="训练几步（默认：400）")
    parser.add_argument("--quick", action="store_true", help="训练 100 步，k 不超过 256，20 秒以内跑完")
    args = parser.parse_args()
    if not 1 <= args.dim <= 65536:
        parser.error(f"--dim 应在 1 到 65536 之间，不能是 {args.dim}")
    if args.steps < 20:
        parser.error(f"--steps 至少是 20，不能是 {args.steps}")
    k, steps = (min(args.dim, 256), 100) if args.quick else (args.dim, args.steps)

    print(f"① 随机的查询和 {KEYS} 个键　（平分的话，每个键的权重是 {1 / KEYS:.3f}）")
    print("    k　" + "　　".join(f"{name}：标准差  最大权重   梯度" for name in POWERS))
    table = {name: [look(size, power) for size in SIZES] for name, power in POWERS.items()}
    for i, size in enumerate(SIZES):
        print(f"{size:5}" + "".join("{:14.2f}{:10.3f}{:10.1e}".format(*rows[i]) for rows in table.values()))

    print(f"\n② 查找任务：32 个键里找出相同的那个，k = {k}，{steps} 步（乱猜的损失是 2.77）")
    curves = {name: train(k, power, steps, name) for name, power in POWERS.items()}
    end = {name: sum(losses[-10:]) / 10 for name, losses in curves.items()}
    for name, losses in curves.items():
        solved = next((i + 1 for i in range(9, steps) if sum(losses[i - 9 : i + 1]) / 10 < 0.5), None)
        print(f"  {name}　最后的损失 {end[name]:.3f}　" + (f"第 {solved} 步降到 0.5 以下" if solved else f"{steps} 步都没有降到 0.5"))
    path = OUTPUTS / "why_scale.png"
    draw(table, curves, k, path)
    print(f"图已写到 {path}")

    stuck = [name for name, value in end.items() if value > 1]
    at = {name: rows[-1] for name, rows in table.items()}
    print(f"\n所以：k = {SIZES[-1]} 时，最大权重 不除 {at['不除'][1]:.2f}、除以 √k {at['除以 √k'][1]:.2f}、除以 k {at['除以 k'][1]:.3f}；")
    print(f"　　　梯度是除以 √k 的 {at['不除'][2] / at['除以 √k'][2]:.2g} 倍（不除）和 {at['除以 k'][2] / at['除以 √k'][2]:.2g} 倍（除以 k）。")
    print("　　　这次训练，" + (f"还没学会的是「{'」「'.join(stuck)}」" if stuck else "三种都学会了") + f"；最后损失最低的是「{min(end, key=end.get)}」。")

    print("\n这个数字对吗？")
    worst = max(abs(row[0] / size ** (0.5 - power) - 1) for name, power in POWERS.items() for size, row in zip(SIZES, table[name]))
    confirm(f"分数的标准差 = √k ÷ 除数（最多差 {worst:.1%}，应在 5% 以内）", worst < 0.05, "查询和键的方差不是 1")
    scaled = [row[1] for row in table["除以 √k"][2:]]
    confirm(f"除以 √k，最大权重几乎不随 k 变（k ≥ 16：{min(scaled):.3f} 到 {max(scaled):.3f}）", max(scaled) / min(scaled) < 1.2, "忘了除，或除成了 k")
    grads = [row[2] for row in table["除以 √k"][2:]]
    confirm(f"除以 √k，梯度也几乎不随 k 变（k ≥ 16：{min(grads):.2f} 到 {max(grads):.2f}）", max(grads) / min(grads) < 1.3, "忘了除，或除成了 k")
    begin = [losses[0] for losses in curves.values()]
    confirm(f"刚开始，损失都接近 ln 16 = 2.77（{'、'.join(f'{loss:.2f}' for loss in begin)}）", all(abs(loss - 2.77) < 0.8 for loss in begin), "值的嵌入太大")


if __name__ == "__main__":
    main()
