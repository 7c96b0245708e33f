"""第 2 章 · 实验　窗口是怎样在文本上滑的？

问题：　步幅是 1、等于窗口、比窗口大，每个词元各被当作几次"正确答案"？打乱之后，同一批里的样本还挨着吗？
先猜：　窗口 4、步幅 1 时，中间的词元会被当几次答案？头尾的呢？（先想 10 秒，再运行）
看点：　① 编号就是位置，一眼看出目标是输入右移一位；② 步幅小于窗口，答案重复；大于窗口，有的词元谁也没用上；③ 打乱的是样本，样本里面的次序不动。
动手改：1. --max-length 改成 8：重叠更多，步幅 1 时中间的词元都被当 8 次答案。
        2. --stride 改成 3：第四幅图换成这个步幅，4 除不尽 3，词元轮流当 1 次和 2 次。
        3. 把 main 里打乱的那个 DataLoader 的 shuffle=True 改成 False：第一批又回到开头，与书上的最后一批不同了，自查变成 ✗。

运行：
    python ch02/experiments/exp_dataloader_intuition.py            # 图片写到 ch02/outputs/
    python ch02/experiments/exp_dataloader_intuition.py --max-length 8 --stride 2
    约 3 秒，0.3 GB（2 核 CPU）

形状记号：b 批大小　t 窗口长度，也就是 max_length　n 样本数
"""

import argparse
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import zhplot  # noqa: F401　导入它，图上就能写中文
from torch.utils.data import DataLoader, Dataset

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
TOTAL = 1001  # 文本就是 0 1 2 … 1000：第几个词元，编号就是几，窗口滑到哪里一看便知
SHOWN = 20  # 图里只画前 20 个位置


# region 改写 ch02/main: GPTDatasetV1
class GPTDatasetV1(Dataset):
    """把一串数字切成"输入—目标"样本。（原版详解见 ch02/main/example_03_sliding_window.py）"""

    def __init__(self, txt, max_length, stride):
        # 改：不要分词器，"编码"就是把每个数字读成它自己。
        token_ids = [int(number) for number in txt.split()]
        if len(token_ids) <= max_length:
            raise ValueError(f"文本只有 {len(token_ids)} 个词元，凑不出一个长 {max_length} 的样本（目标还要多 1 个），请换长一点的文本或改小 max_length")
        ids = torch.tensor(token_ids)
        self.input_ids = ids[:-1].unfold(0, max_length, stride)  # (n, t)
        self.target_ids = ids[1:].unfold(0, max_length, stride)  # (n, t)

    def __len__(self):
        return len(self.input_ids)

    def __getitem__(self, idx):
        return self.input_ids[idx], self.target_ids[idx]


# endregion


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def times_as_target(dataset):
    """每个词元被当作几次"正确答案"。

    参数:
        dataset (GPTDatasetV1): 样本

    返回:
        list[int]: 第 i 个数是编号为 i 的词元的次数
    """
    counts = Counter(dataset.target_ids.flatten().tolist())
    return [counts[i] for i in range(TOTAL)]


def draw(datasets, path):
    """画图：每种步幅一格，上面一行一个样本，下面是每个词元当了几次答案。

    参数:
        datasets (dict[int, GPTDatasetV1]): 步幅 → 样本
        path (Path): 图片写到哪里
    """
    figure, axes = plt.subplots(2, len(datasets), figsize=(3.3 * len(datasets), 5), height_ratios=[3, 1], sharex=True, squeeze=False, layout="constrained")
    for column, (stride, dataset) in enumerate(datasets.items()):
        windows, bars = axes[0][column], axes[1][column]
        inputs = [row for row in dataset.input_ids.tolist() if row[-1] + 1 < SHOWN][:8]
        for y, row in enumerate(inputs):
            windows.barh(-y, len(row), left=row[0] - 0.5, height=0.42, color="#9ecae1")
            windows.barh(-y - 0.42, len(row), left=row[0] + 0.5, height=0.3, color="#fdae6b")  # 目标右移一位
            for position in row:
                windows.text(position, -y, str(position), ha="center", va="center", fontsize=7)
        windows.set(xlim=(-0.8, SHOWN - 0.2), ylim=(-8, 0.6), xticks=range(0, SHOWN, 4), yticks=[])
        windows.set_title(f"步幅 {stride}，样本 {len(dataset)} 个", fontsize=11)
        bars.bar(range(SHOWN), times_as_target(dataset)[:SHOWN], color="#fdae6b")
        bars.yaxis.get_major_locator().set_params(integer=True)
        bars.set_xlabel("词元的位置（也是编号）")
    axes[0][0].set_ylabel("样本：蓝是输入，橙是目标")
    axes[1][0].set_ylabel("当几次答案")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight", pad_inches=0.15)
    plt.close(figure)


def main():
    """看几批、画窗口、数次数、打乱。"""
    parser = argparse.ArgumentParser(description="实验　数据加载器的直觉")
    parser.add_argument("--max-length", type=int, default=4, help="窗口长度，2 到 12（默认：4）")
    parser.add_argument("--stride", type=int, help="第四幅图的步幅，至少是 1（默认：窗口的一半）")
    args = parser.parse_args()
    t = args.max_length
    if not 2 <= t <= 12:
        parser.error(f"--max-length 应在 2 到 12 之间，不能是 {t}")
    if args.stride is not None and not 1 <= args.stride <= 100:
        parser.error(f"--stride 应在 1 到 100 之间，不能是 {args.stride}")

    text = " ".join(map(str, range(TOTAL)))
    strides = dict.fromkeys([1, t, t + 2, args.stride or t // 2])  # dict.fromkeys：去掉重复的，次序不变
    datasets = {stride: GPTDatasetV1(text, t, stride) for stride in strides}

    print(f"一、一批一批地看　窗口 {t}，步幅 {t}，批大小 2，不打乱")
    batches = list(DataLoader(datasets[t], batch_size=2, shuffle=False, drop_last=True))
    for name, (inputs, targets) in (("第一批", batches[0]), ("第二批", batches[1]), ("最后一批", batches[-1])):  # 各 (b, t)
        print(f"  {name}　输入 {inputs.tolist()}　目标 {targets.tolist()}")

    print("\n二、打乱之后的第一批（种子 123）")
    torch.manual_seed(123)
    shuffled = list(DataLoader(datasets[t], batch_size=2, shuffle=True, drop_last=True))
    print(f"  输入 {shuffled[0][0].tolist()}")
    inside = [abs(int(inputs[0, 0] - inputs[1, 0])) for inputs, _ in shuffled]
    print(f"  同一批的两个样本，平均相隔 {sum(inside) / len(inside):.0f} 个位置；不打乱时总是 {t} 个。样本里面的次序没有动")

    print("\n三、每个词元当几次答案")
    middle = {}
    for stride, dataset in datasets.items():
        counts = times_as_target(dataset)
        # 头尾各让出一个窗口：那里的词元，能罩住它们的窗口本来就少。
        middle[stride] = counts[t + stride : TOTAL - t - stride]
        never = sum(count == 0 for count in counts)
        print(f"  步幅 {stride}　样本 {len(dataset)} 个　开头 {counts[: t + 2]}　中间 {min(middle[stride])}–{max(middle[stride])} 次　一次也没有的 {never} 个")
    draw(datasets, OUTPUTS / "dataloader_intuition.png")
    print(f"图已写到 {OUTPUTS / 'dataloader_intuition.png'}")
    print(f"\n所以：步幅 1，中间每个词元当 {max(middle[1])} 次答案；步幅 {t}，正好 {max(middle[t])} 次；步幅 {t + 2}，有 {times_as_target(datasets[t + 2]).count(0)} 个一次也没当上。")
    print("第 0 个永远当不上答案：它前面什么也没有，没法猜它。")

    print("\n这个数字对吗？")
    shifted = all(torch.equal(dataset.input_ids[:, 1:], dataset.target_ids[:, :-1]) for dataset in datasets.values())
    confirm("目标都是输入右移一位", shifted, "目标没有从第 1 个词元开始切")
    if t == 4:
        last, book = batches[-1][0].tolist(), [[992, 993, 994, 995], [996, 997, 998, 999]]
        confirm(f"最后一批的输入与书上附带材料相同：{book}", last == book, "步幅不等于窗口")
        mixed, book = shuffled[-1][0].tolist(), [[880, 881, 882, 883], [112, 113, 114, 115]]
        confirm(f"打乱后的最后一批也相同：{book}", mixed == book, "种子不是 123，或打乱之前又用过随机数")
    confirm("步幅 1 时，中间的词元都当 t 次答案；步幅 t 时都是 1 次", set(middle[1]) == {t} and set(middle[t]) == {1}, "样本数算错了")
    start = sorted(int(inputs[i, 0]) for inputs, _ in shuffled for i in range(len(inputs)))
    confirm("打乱后样本不重复", len(set(start)) == len(start), "用了有放回的抽样")


if __name__ == "__main__":
    main()
