"""第 2 章 · 实验　三种位置编码，谁能走出训练过的长度？

问题：　只在 32 个位置上训练，到了第 33–96 个位置，模型还会做同样的题吗？
先猜：　可学习的、正弦的、旋转的（RoPE）：哪一种一出去就不会了，哪一种走得最远？（先想 10 秒，再运行）
看点：　① 三种编码长什么样；② 两个位置的点积，正弦与 RoPE 只由距离决定，可学习的没有这个规律；③ 准确率随位置的曲线，虚线右边是没训练过的。
动手改：1. --distance 改成 6：隔得更远才抄，难学一些，三种走出去之后的高低次序不变。
        2. 把 ROPE_BASE 改成 20：每一对都转得快了，右上那幅图里 RoPE 的点积几步就掉到 0 附近，不再与正弦重合；题照样会做。
        3. 把 encode_rope 里的 angles 乘 0：什么位置也没有，准确率与"不用位置"一个样。

运行：
    python ch02/experiments/exp_positional_encoding.py             # 图片写到 ch02/outputs/
    python ch02/experiments/exp_positional_encoding.py --quick
    约 13 秒，0.4 GB（2 核 CPU）

形状记号：b 批大小　t 序列长度　d 嵌入维度　V 词表大小
"""

import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
TRAINED, LONGEST = 32, 96  # 训练时 32 个位置，检验时 96 个
VOCAB_SIZE, DIM = 16, 64
ROPE_BASE = 10_000  # 越大，转得最慢的那一对转得越慢，能分辨的距离越远；GPT-2 之后的模型多用 1 万到 100 万
KINDS = {"learned": "可学习（GPT-2）", "sinusoidal": "正弦", "rope": "RoPE", "none": "不用位置"}


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


def encode_rope(x):
    """旋转位置编码（RoPE）：不加到嵌入上，而是把查询和键的每一对维度转一个角度；点积只剩下角度之差，也就是距离。

    参数:
        x (Tensor): 查询或键，(b, t, d)

    返回:
        Tensor: 转过的，(b, t, d)

    出处: Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding, 2021
    """
    angles = angles_of(x.shape[1], x.shape[2], ROPE_BASE)
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
        self.out_head = nn.Linear(DIM, VOCAB_SIZE)

    def forward(self, idx):
        """前向传播。

        参数:
            idx (Tensor): 词元编号，(b, t)

        返回:
            Tensor: 每个位置的分数，(b, t, V)
        """
        t = idx.shape[1]
        x = self.tok_emb(idx)  # (b, t, d)
        if self.kind == "learned":
            x = x + self.pos_emb.weight[:t]
        elif self.kind == "sinusoidal":
            x = x + self.table[:t]
        queries, keys, values = self.W_query(x), self.W_key(x), self.W_value(x)  # (b, t, d)
        if self.kind == "rope":
            queries, keys = encode_rope(queries), encode_rope(keys)
        scores = queries @ keys.transpose(1, 2) / DIM**0.5  # (b, t, t)
        future = torch.ones(t, t, dtype=torch.bool).triu(diagonal=1)
        weights = scores.masked_fill(future, -torch.inf).softmax(dim=-1)
        return self.out_head(weights @ values)  # (b, t, V)


def train(kind, distance, steps, seed):
    """训练一个，再量它在每个位置上的准确率。

    参数:
        kind (str): 位置编码的种类
        distance (int): 抄前面第几个
        steps (int): 训练几步
        seed (int): 随机种子

    返回:
        tuple[Copier, Tensor]: 训练好的模型；每个位置的准确率，(t,)，前 distance 个没有答案，不算
    """
    torch.manual_seed(seed)
    model = Copier(kind)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (0.5 + 0.5 * math.cos(math.pi * step / steps))  # 余弦衰减：收尾时走小步，停得稳
        idx = torch.randint(0, VOCAB_SIZE, (32, TRAINED))  # (b, t)
        logits = model(idx)[:, distance:]  # (b, t - k, V)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), idx[:, :-distance].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        idx = torch.randint(0, VOCAB_SIZE, (256, LONGEST))  # (b, t)
        right = model(idx)[:, distance:].argmax(dim=-1) == idx[:, :-distance]
    return model, right.float().mean(dim=0)


def draw(model, accuracies, distance, path):
    """画图：可学习与正弦的编码、点积随距离的变化、准确率随位置的变化。

    参数:
        model (Copier): 训练好的、可学习位置编码的模型
        accuracies (dict): 种类 → 每个位置的准确率
        distance (int): 抄前面第几个
        path (Path): 图片写到哪里
    """
    figure, axes = plt.subplots(2, 2, figsize=(11.5, 7.2), layout="constrained")
    learned = model.pos_emb.weight.detach()
    for axis, table, title in ((axes[0, 0], learned, "可学习：训练之后"), (axes[1, 0], model.table, "正弦：公式算出")):
        axis.imshow(table.numpy(), cmap="RdBu", vmin=-2.5, vmax=2.5, aspect="auto", interpolation="nearest")
        axis.axhline(TRAINED - 0.5, color="black", linestyle="--", linewidth=1)
        axis.set(xlabel="维度", ylabel="位置", title=title)
    gaps = torch.arange(TRAINED)
    unit = torch.ones(1, LONGEST, DIM) / DIM**0.5
    turned = encode_rope(unit)[0]  # (t, d)
    for name, vectors in (("learned", learned), ("sinusoidal", model.table), ("rope", turned)):
        # 正弦与 RoPE 的两条线恰好重合：这里的向量每一对都一样长，点积都是各个转速的余弦取平均。所以 RoPE 只画点。
        for start, style in ((0, "-"), (20, ":")) if name != "rope" else ((0, "x"), (20, "+")):
            label = f"{KINDS[name]}，从位置 {start} 算起"
            dots = vectors[start + gaps] @ vectors[start]  # (32,)
            axes[0, 1].plot(gaps, dots / dots[0], style, color=f"C{list(KINDS).index(name)}", label=label)
    axes[0, 1].set(ylim=(-0.5, 2.0), xlabel="相隔几个位置", ylabel="点积（与自己的点积为 1）")
    axes[0, 1].set_title("从 0 与从 20 算起的两条线重合，就是只由距离决定")
    axes[0, 1].legend(fontsize=8)
    for i, (kind, accuracy) in enumerate(accuracies.items()):
        axes[1, 1].plot(range(distance, LONGEST), accuracy, color=f"C{i}", label=KINDS[kind])
    axes[1, 1].axvline(TRAINED - 0.5, color="black", linestyle="--", linewidth=1)
    axes[1, 1].set(ylim=(0, 1.05), xlabel="位置（虚线右边没有训练过）")
    axes[1, 1].set_title(f"抄前面第 {distance} 个词元的准确率")
    axes[1, 1].legend(fontsize=8)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight", pad_inches=0.15)
    plt.close(figure)


def main():
    """同一道题，四个模型，只有位置编码不同。"""
    parser = argparse.ArgumentParser(description="实验　位置编码")
    parser.add_argument("--distance", type=int, default=3, help="抄前面第几个词元，1 到 16（默认：3）")
    parser.add_argument("--steps", type=int, default=600, help="训练几步（默认：600）")
    parser.add_argument("--seed", type=int, default=123, help="随机种子（默认：123）")
    parser.add_argument("--quick", action="store_true", help="只训练 150 步")
    args = parser.parse_args()
    if not 1 <= args.distance <= 16:
        parser.error(f"--distance 应在 1 到 16 之间，不能是 {args.distance}")
    if not 1 <= args.steps <= 100_000 or not 0 <= args.seed < 2**63:
        parser.error(f"--steps 应在 1 到 100000 之间，--seed 不能是负数，不能是 {args.steps} 和 {args.seed}")

    torch.set_num_threads(1)  # 这么小的矩阵，几个线程互相等反而慢
    steps = 150 if args.quick else args.steps
    print(f"训练 {steps} 步，每个样本 {TRAINED} 个位置；题目：抄前面第 {args.distance} 个词元，瞎蒙的准确率是 {1 / VOCAB_SIZE:.0%}")
    models, accuracies, inside, outside = {}, {}, {}, {}
    for kind, name in KINDS.items():
        models[kind], accuracies[kind] = train(kind, args.distance, steps, args.seed)
        inside[kind] = accuracies[kind][: TRAINED - args.distance].mean().item()
        outside[kind] = accuracies[kind][TRAINED - args.distance :].mean().item()
        print(f"  {name}　训练过的位置 {inside[kind]:.0%}　第 {TRAINED + 1}–{LONGEST} 个位置 {outside[kind]:.0%}")
    draw(models["learned"], accuracies, args.distance, OUTPUTS / "positional_encoding.png")
    print(f"图已写到 {OUTPUTS / 'positional_encoding.png'}")
    able = [kind for kind in KINDS if inside[kind] > 0.9]
    if able:
        best = max(able, key=outside.get)
        print(f"\n所以：会做这道题的有{'、'.join(KINDS[kind] for kind in able)}；走出训练长度，剩得最多的是{KINDS[best]}（{outside[best]:.0%}）。")
        if "learned" in able:
            print(f"可学习的掉到 {outside['learned']:.0%}：{TRAINED} 号以后的行还是随机数，谁也没训练过它们；真正的 GPT-2 更干脆，超过 1024 就报错。")
    else:
        print("\n所以：练得还不够，四种都不会做；去掉 --quick 或加大 --steps。")

    print("\n这个数字对吗？")
    vector = torch.randn(1, 1, DIM)
    turned = encode_rope(vector.expand(1, LONGEST, DIM))[0]  # (t, d)
    dots = torch.stack([turned[start] @ turned[start + 7] for start in range(LONGEST - 7)])  # (t - 7,)
    confirm(f"RoPE：任意向量，相隔 7 个位置的点积都一样（相差 {(dots.max() - dots.min()).item():.0e}）", (dots.max() - dots.min()).item() < 1e-4 * DIM, "sin 与 cos 的正负号写错了")
    confirm("RoPE 只转不拉：长度不变", torch.allclose(turned.norm(dim=-1), vector.norm().expand(LONGEST), rtol=1e-4), "cos²+sin² 不等于 1，角度用错了")
    table = sinusoidal_table(LONGEST, DIM)
    confirm("正弦：每个位置的编码长度都是 √(d/2)", torch.allclose(table.norm(dim=-1), torch.full((LONGEST,), (DIM / 2) ** 0.5), rtol=1e-4), "sin 与 cos 没有成对")
    torch.manual_seed(args.seed)
    fresh = Copier("learned").pos_emb.weight  # 与训练前相同的初始值
    untouched = torch.equal(fresh[TRAINED:], models["learned"].pos_emb.weight[TRAINED:])
    confirm(f"可学习的：{TRAINED} 号以后的行与训练前一个数不差", untouched, "训练时用到了更长的样本，或权重衰减不是 0")


if __name__ == "__main__":
    main()
