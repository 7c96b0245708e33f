"""第 2 章 · 实验　训练前后，词嵌入搬到了哪里？

问题：　嵌入表一开始是随机数，模型只练"看左右、猜中间"，从没人告诉它哪些词是一类。练完之后，同类的词会聚到一起吗？
先猜：　训练前，一个词的最近邻恰好是同类的机会有多大？训练后呢？（先想 10 秒，再运行）
看点：　① 训练前后的两张地图；② 最近邻是同类的比例；③ 谁和谁近，由谁能互相替换决定，与字面无关。
动手改：1. --dim 改成 2：没有降维这一步，地图就是嵌入本身，同类仍然聚成堆，但两维太挤，有些类挤在一处。
        2. --steps 改成 20：还没练够，最近邻是同类的和瞎蒙差不多，两张图都是乱的。
        3. 把 PATTERNS 里的 "{人} 在 {地方} {动作} {食物}" 去掉：没有任何句子用到食物和动作，脚本照样跑，地图上少了两类。

运行：
    python ch02/experiments/exp_embedding_map.py             # 图片写到 ch02/outputs/
    python ch02/experiments/exp_embedding_map.py --dim 2
    约 4 秒，0.4 GB（2 核 CPU）

形状记号：n 样本数　d 嵌入维度　V 词表大小
"""

import argparse
import math
import re
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
# 句子由规则造出来，所以我们知道哪些词是一类；模型不知道，它只看到词元编号。
GROUPS = {
    "人": "爸爸 妈妈 爷爷 奶奶 老师 同学".split(),
    "地方": "家里 学校 公园 饭馆 车站 河边".split(),
    "动作": "吃 买 卖 做 尝 分".split(),
    "食物": "米饭 面条 包子 饺子 苹果 西瓜".split(),
    "颜色": "红 黄 蓝 白 黑 绿".split(),
    "东西": "帽子 书包 雨伞 毛衣 鞋子 手套".split(),
}
PATTERNS = ["{人} 在 {地方} {动作} {食物}", "{人} 的 {东西} 是 {颜色} 的", "{颜色} {东西} 在 {地方}"]
WINDOW = 2  # 看左右各几个词


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


class CBOW(nn.Module):
    """连续词袋（continuous bag of words）：左右几个词的嵌入取平均，猜中间是哪个词。

    参数:
        vocab_size (int): 词表大小 V
        dim (int): 嵌入维度 d

    出处: Mikolov et al., Efficient Estimation of Word Representations in Vector Space, 2013（Word2Vec，原书 2.1 节）
    """

    def __init__(self, vocab_size, dim):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, dim)
        self.out_head = nn.Linear(dim, vocab_size, bias=False)

    def forward(self, context):
        """前向传播。

        参数:
            context (Tensor): 左右的词，(n, 2·WINDOW)

        返回:
            Tensor: 中间是各个词的分数，(n, V)
        """
        return self.out_head(self.embedding(context).mean(dim=1))


def make_examples(patterns):
    """造出全部句子，再切成"左右 → 中间"的样本。

    参数:
        patterns (list[str]): 句式

    返回:
        tuple[list[str], Tensor, Tensor, int]: 词表、左右的词 (n, 2·WINDOW)、中间的词 (n,)、句子数
    """
    sentences = []
    for pattern in patterns:
        slots = re.findall(r"{(\w+)}", pattern)
        for words in product(*(GROUPS[slot] for slot in slots)):
            sentence = pattern
            for slot, word in zip(slots, words):
                sentence = sentence.replace(f"{{{slot}}}", word, 1)
            sentences.append(sentence.split())
    vocab = ["<空>", *dict.fromkeys(word for sentence in sentences for word in sentence)]
    index = {word: i for i, word in enumerate(vocab)}
    contexts, centers = [], []
    for sentence in sentences:
        ids = [0] * WINDOW + [index[word] for word in sentence] + [0] * WINDOW  # 句子外面用 <空> 填充
        for i in range(WINDOW, len(ids) - WINDOW):
            contexts.append(ids[i - WINDOW : i] + ids[i + 1 : i + 1 + WINDOW])
            centers.append(ids[i])
    return vocab, torch.tensor(contexts), torch.tensor(centers), len(sentences)


def neighbours(vectors, labels):
    """每个词最近的另一个词（余弦相似度最大），是同一类的占多少。

    参数:
        vectors (Tensor): 嵌入，(V, d)
        labels (list[str]): 每个词的类

    返回:
        tuple[float, list[int]]: 同类的比例；每个词的最近邻是第几个
    """
    unit = nn.functional.normalize(vectors, dim=-1)
    similarity = unit @ unit.T  # (V, V)
    similarity.fill_diagonal_(-torch.inf)  # 最近的总是自己，排除掉
    nearest = similarity.argmax(dim=-1).tolist()
    return sum(labels[i] == labels[j] for i, j in enumerate(nearest)) / len(labels), nearest


def pca(vectors):
    """主成分分析（PCA）：找出差异最大的两个方向，把 d 维压到 2 维，好画在纸上。

    参数:
        vectors (Tensor): 嵌入，(V, d)

    返回:
        tuple[Tensor, float]: 平面坐标 (V, 2)；这两个方向占全部方差的比例
    """
    centered = vectors - vectors.mean(dim=0)
    _, scale, directions = torch.linalg.svd(centered, full_matrices=False)  # 奇异值从大到小，方差正比于奇异值的平方
    kept = (scale[:2] ** 2).sum() / (scale**2).sum()
    return centered @ directions[:2].T, kept.item()  # (V, 2)


def spread_labels(points, width=25, height=13):
    """给每个点的文字找一个不遮住别人的位置：从近到远、绕着点试一圈圈的位置，取第一个不碰别的文字、也不碰任何一个点的。

    参数:
        points (Tensor): 点的位置，单位是磅，(V, 2)
        width (int): 文字的宽，磅
        height (int): 文字的高，磅

    返回:
        Tensor: 文字中心的位置，(V, 2)
    """
    box, placed = torch.tensor([width, height]), []
    turns = 2 * math.pi * torch.arange(16) / 16
    rings = torch.cat([distance * torch.stack([turns.cos(), turns.sin()], dim=-1) for distance in range(12, 120, 6)])  # (18 × 16, 2)
    for point in points:
        for place in point + rings:
            hits_dot = ((place - points).abs() < box / 2 + 2).all(dim=-1).any()
            if not hits_dot and all((place - other).abs().ge(box).any() for other in placed):
                break
        placed.append(place)  # 都碰的话，就放在最远的一处
    return torch.stack(placed)  # (V, 2)


def draw(maps, words, labels, path):
    """画训练前后的两张地图，一类一种颜色；文字与点之间连一条细线。

    参数:
        maps (dict): 标题 → 嵌入 (V, d)
        words (list[str]): 每个点是哪个词
        labels (list[str]): 每个词的类
        path (Path): 图片写到哪里
    """
    figure, axes = plt.subplots(1, 2, figsize=(13, 6.4), layout="constrained")
    groups = list(dict.fromkeys(labels))
    for axis, (title, vectors) in zip(axes, maps.items()):
        points, kept = pca(vectors)
        points = points / (points.amax(dim=0) - points.amin(dim=0)) * torch.tensor([330.0, 300.0])  # (V, 2)　换成磅，与文字的大小同一个单位
        places = spread_labels(points)
        for i, word in enumerate(words):
            color = f"C{groups.index(labels[i])}"
            axis.plot(*zip(points[i].tolist(), places[i].tolist()), color=color, linewidth=0.5, alpha=0.6)
            axis.text(*places[i].tolist(), word, ha="center", va="center", color=color, fontsize=9)
        for group in groups:
            rows = [i for i, label in enumerate(labels) if label == group]
            axis.scatter(points[rows, 0], points[rows, 1], color=f"C{groups.index(group)}", s=16, label=group, zorder=3)
        share, _ = neighbours(vectors, labels)
        axis.set_title(f"{title}　最近邻同类 {share:.0%}（两个方向占方差 {kept:.0%}）")
        edges = torch.cat([points, places])  # (2V, 2)
        (left, low), (right, high) = edges.amin(dim=0).tolist(), edges.amax(dim=0).tolist()
        middle = ((left + right) / 2, (low + high) / 2)
        axis.set(xticks=[], yticks=[], xlim=(min(left - 20, middle[0] - 220), max(right + 20, middle[0] + 220)), ylim=(min(low - 12, middle[1] - 200), max(high + 12, middle[1] + 200)))
    axes[0].legend(fontsize=9, loc="best")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    """造句、训练、画训练前后的地图。"""
    parser = argparse.ArgumentParser(description="实验　词嵌入的地图")
    parser.add_argument("--dim", type=int, default=16, help="嵌入维度 d，2 到 256（默认：16）")
    parser.add_argument("--steps", type=int, default=300, help="训练几步（默认：300）")
    parser.add_argument("--seed", type=int, default=123, help="随机种子（默认：123）")
    parser.add_argument("--quick", action="store_true", help="只训练 100 步")
    args = parser.parse_args()
    if not 2 <= args.dim <= 256 or not 1 <= args.steps <= 100_000:
        parser.error(f"--dim 应在 2 到 256 之间，--steps 在 1 到 100000 之间，不能是 {args.dim} 和 {args.steps}")
    if not 0 <= args.seed < 2**63:
        parser.error(f"--seed 应是 0 到 2 的 63 次方之间的整数，不能是 {args.seed}")

    torch.set_num_threads(1)  # 这么小的矩阵，几个线程互相等反而慢
    vocab, contexts, centers, sentences = make_examples(PATTERNS)
    group_of = {word: group for group, words in GROUPS.items() for word in words}
    shown = [i for i, word in enumerate(vocab) if word in group_of]  # 「在」「的」「是」不属于哪一类，不画
    words, labels = [vocab[i] for i in shown], [group_of[vocab[i]] for i in shown]
    print(f"{sentences} 个句子，词表 {len(vocab)} 个词，{len(centers):,} 个样本　d = {args.dim}")

    torch.manual_seed(args.seed)
    model = CBOW(len(vocab), args.dim)
    before = model.embedding.weight.detach()[shown].clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.01)
    steps = 100 if args.quick else args.steps
    for step in range(1, steps + 1):
        rows = torch.randint(0, len(centers), (256,))
        loss = nn.functional.cross_entropy(model(contexts[rows]), centers[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in (1, steps // 2, steps):
            print(f"  第 {step:3} 步　损失 {loss.item():.3f}")
    after = model.embedding.weight.detach()[shown]

    (share_before, near_before), (share_after, near_after) = neighbours(before, labels), neighbours(after, labels)
    size = len(words)
    same_group = sum(labels[i] == labels[j] for i in range(size) for j in range(size) if i != j)
    chance = same_group / (size * (size - 1))
    print(f"\n最近邻是同类的：训练前 {share_before:.0%}，训练后 {share_after:.0%}；瞎蒙是 {chance:.0%}")
    for word in ("妈妈", "红", "饺子"):
        if word in words:
            i = words.index(word)
            print(f"  「{word}」的最近邻：训练前「{words[near_before[i]]}」，训练后「{words[near_after[i]]}」")
    draw({"训练前": before, "训练后": after}, words, labels, OUTPUTS / "embedding_map.png")
    print(f"图已写到 {OUTPUTS / 'embedding_map.png'}")
    if share_after > max(share_before, 2 * chance):
        print("所以：没有人教它分类，只是能互相替换的词得到相似的梯度，一步步被推到了一起。")
    else:
        print("所以：练得还不够，同类的词没有聚起来；--steps 再大些试试。")

    print("\n这个数字对吗？")
    confirm("没有训练时，PCA 的两个方向也不会占满方差（d 大于 2 时）", args.dim == 2 or pca(before)[1] < 0.99, "忘了减去平均值")
    points, _ = pca(after)
    confirm("PCA 的坐标以 0 为中心", points.mean(dim=0).abs().max().item() < 1e-3 * max(1.0, points.abs().max().item()), "忘了减去平均值")
    if not args.quick and args.steps >= 300 and args.dim >= 8:
        confirm(f"训练后，最近邻是同类的（{share_after:.0%}）比瞎蒙（{chance:.0%}）多得多", share_after > 2 * chance, "学习率太小，或左右的词取错了")


if __name__ == "__main__":
    main()
