"""第 5 章 · 练习 5.1　pizza 多久被抽中一次？

题目：　5.3.1 节用三种温度各抽了 1000 次。温度 1、0.1、5 时，pizza 各被抽中几次？怎样更快、更准地知道它的频率？
先想：　pizza 的分数是 -1.89，比 forward 的 6.75 低得多。温度 5 时，它大约几十次、几次，还是一次也没有？（先想 10 秒，再运行）
解法：　① 照 5.3.1 节抽 1000 次，数一数；② 不抽，直接看 softmax 给它的概率；③ 多抽几次，看频率怎样靠近概率。
学到：　频率是概率的估计。抽 n 次，误差约为 √(p(1 − p) / n)：抽 1000 次得到 0.032 而不是 0.0430，属于正常的波动；想准十倍，要多抽一百倍。

运行：
    python ch05/experiments/exercise_5_1_pizza.py
    约 1 秒，0.3 GB（2 核 CPU）

形状记号：　V 词表大小
"""

import argparse

import torch

# 5.3.1 节的 9 个词和分数。
VOCAB = ["closer", "every", "effort", "forward", "inches", "moves", "pizza", "toward", "you"]
LOGITS = torch.tensor([4.51, 0.89, -1.90, 6.75, 1.63, -1.62, -1.89, 6.28, 1.79])  # (V,)
PIZZA = VOCAB.index("pizza")
TIMES = 1000


def count_pizza(probas, times):
    """按概率抽 times 次，数 pizza 出现几次。

    参数:
        probas (Tensor): 每个词的概率，(V,)
        times (int): 抽几次

    返回:
        int: pizza 出现的次数
    """
    torch.manual_seed(123)
    # 与 5.3.1 节一样，一次只抽一个：一口气抽 1000 个（num_samples=1000），用掉的随机数不同，次数就对不上书。
    return sum(torch.multinomial(probas, num_samples=1).item() == PIZZA for _ in range(times))


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def main():
    """先抽，再算，再看频率怎样靠近概率。"""
    argparse.ArgumentParser(description="练习 5.1　pizza 多久被抽中一次").parse_args()

    print(f"①② 抽 {TIMES} 次，与概率相比")
    counts, chances = {}, {}
    for temperature in (1, 0.1, 5):
        probas = torch.softmax(LOGITS / temperature, dim=0)  # (V,)
        counts[temperature], chances[temperature] = count_pizza(probas, TIMES), probas[PIZZA].item()
        drawn, expected = counts[temperature], TIMES * chances[temperature]
        print(f"  温度 {temperature:<4} 抽中 {drawn:2} 次　概率 {chances[temperature]:.4f}　该有 {expected:.1f} 次")

    # 抽 n 次，每次抽中的概率是 p：次数的标准差是 √(n·p·(1 − p))，频率的标准差再除以 n。
    chance = chances[5]
    spread = (chance * (1 - chance) / TIMES) ** 0.5
    away = abs(counts[5] / TIMES - chance) / spread
    print(f"\n温度 5：频率 {counts[5] / TIMES:.4f}，概率 {chance:.4f}，差 {away:.1f} 个标准差（两个以内都很平常）")

    print("\n③ 温度 5，抽得越多越准")
    probas = torch.softmax(LOGITS / 5, dim=0)  # (V,)
    for times in (100, 10_000, 1_000_000):
        torch.manual_seed(123)
        drawn = torch.multinomial(probas, times, replacement=True)  # 这里不与书比次数，一口气抽完
        frequency, usual = (drawn == PIZZA).float().mean().item(), (chance * (1 - chance) / times) ** 0.5
        print(f"  抽 {times:>9,} 次　频率 {frequency:.4f}　误差 {abs(frequency - chance):.4f}　预计的误差 {usual:.4f}")

    print("\n这个数字对吗？")
    hint = "抽之前没有设种子，或一次抽了不止一个；Intel 芯片的 Mac 上，旧版 PyTorch 用另一套随机数，对不上是正常的"
    confirm(f"温度 5 抽中 32 次（得到 {counts[5]}）", counts[5] == 32, hint)
    confirm("温度 5 的概率是 0.0430", abs(chance - 0.0430) < 5e-5, "乘了温度，而不是除以温度")
    confirm("温度 1 和 0.1 一次也没抽中：概率只有万分之一，甚至更小", counts[1] == counts[0.1] == 0, "温度用反了")
    confirm(f"抽一百万次，频率 {frequency:.4f} 与概率相差不到 0.001", abs(frequency - chance) < 1e-3, "抽的时候没有放回")


if __name__ == "__main__":
    main()
