"""第 3 章 · 实验　头多一点，好在哪里？是不是越多越好？

问题：　每个位置要同时说出前面第 1、2、3、5 个符号各是什么。嵌入维度不变，几个头才做得到？
先猜：　一个头能同时看四个地方吗？64 个头（每个头只有 1 维）呢？（先想 10 秒，再运行）
看点：　① 参数一个也没多，差别全在"怎么分"；② 头数不够，学得慢得多：一个头只有一行权重，只能靠权重的大小分出几处谁是谁；
        ③ 下面一排：头数正好时，每个头各盯一处；④ 头太多也不好：每个头的维度太小，学得慢，每一步也更花时间。
动手改：1. --look 1：只看一处，一个头就够了。
        2. --look 2：300 步时，一个头知道是哪两个符号，却分不清先后，准确率在六成上下；两个头早就全对了。再加 --steps 2000，一个头也到了九成。
        3. --dim 16：同样的头数，每个头的维度小了，多个头也学得慢。

运行：
    python ch03/experiments/exp_head_count.py            # 图片写到 ch03/outputs/
    python ch03/experiments/exp_head_count.py --quick
    约 13 秒，0.4 GB（2 核 CPU）

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　k 每个头的维度（k = d / h）　V 有几种符号
"""

import argparse
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
PLACES = (1, 2, 3, 5)  # 要看前面的第几个
V, T = 8, 24


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


class Recall(nn.Module):
    """只有一层注意力的模型：在每个位置，说出前面各处的符号。

    参数:
        d (int): 嵌入维度
        h (int): 头数
        look (int): 要看几处，取 PLACES 的前几个

    形状:
        输入 (b, t) → 输出 (b, t, look, V)
    """

    def __init__(self, d, h, look):
        super().__init__()
        self.tok_emb = nn.Embedding(V, d)
        self.pos_emb = nn.Embedding(T, d)
        self.att = MultiHeadAttention(d, d, T, 0.0, h)
        self.out_head = nn.Linear(d, look * V)

    def forward(self, in_idx):
        """前向传播；故意不加残差连接，一切信息都得靠注意力搬过来。

        参数:
            in_idx (Tensor): 符号，(b, t)

        返回:
            Tensor: 各处各符号的 logits（未归一化的分数），(b, t, look, V)
        """
        x = self.tok_emb(in_idx) + self.pos_emb.weight[: in_idx.shape[1]]  # (b, t, d)
        return self.out_head(self.att(x)).unflatten(-1, (-1, V))  # (b, t, look, V)


def train(d, h, look, steps):
    """训练一个 Recall，题目是随机的符号串，永远做不完，所以不会过拟合。

    参数:
        d (int): 嵌入维度
        h (int): 头数
        look (int): 要看几处
        steps (int): 几步

    返回:
        tuple[Recall, list[float], list[float], float]: 模型、每一步的损失和准确率、每一步几毫秒
    """
    torch.manual_seed(123)  # 每种头数用同样的初始权重、同样的题
    model, places = Recall(d, h, look), PLACES[:look]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses, hits, first, start = [], [], max(places), time.perf_counter()
    for _ in tqdm(range(steps), desc=f"{h} 个头", ncols=80, unit="步", leave=False, disable=None):
        symbols = torch.randint(V, (32, T))  # (b, t)
        targets = torch.stack([symbols[:, first - place : T - place] for place in places], dim=-1)  # (b, t - first, look)　开头几个没有那么多前文，不考
        logits = model(symbols)[:, first:]  # (b, t - first, look, V)
        loss = nn.functional.cross_entropy(logits.flatten(0, 2), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        hits.append((logits.argmax(dim=-1) == targets).float().mean().item())
    return model, losses, hits, (time.perf_counter() - start) / steps * 1000


def gaze(weights):
    """一个头平均把多少权重给了前面第 0、1、2 … 个。

    参数:
        weights (Tensor): 权重，(t, t)

    返回:
        list[float]: 下标是往前数几个，0 是自己；只统计前文够长的那些行
    """
    return [weights.diagonal(-back)[max(PLACES) - back :].mean().item() for back in range(max(PLACES) + 1)]


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def draw(curves, speeds, weights, path):
    """上排：各头数的准确率曲线、每一步的用时；下排：头数正好的那个模型，每个头在看哪里。

    参数:
        curves (dict[int, list[float]]): 头数 → 每一步的准确率
        speeds (dict[int, float]): 头数 → 每一步几毫秒
        weights (Tensor): 下排的权重，(h, t, t)
        path (Path): 图片写到哪里
    """
    figure = plt.figure(figsize=(9.6, 6.4), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.15, 1))
    left, right = top.subplots(1, 2, width_ratios=(2, 1))
    for i, (heads, hits) in enumerate(curves.items()):
        smooth = torch.tensor(hits).unfold(0, 5, 1).mean(dim=-1)  # (n,)　每 5 步平均一次
        left.plot(range(5, 5 + len(smooth)), smooth, color=plt.get_cmap("viridis")(i / len(curves)), label=f"{heads} 个头")
    left.set_ylim(0, 1.03)
    left.set_xlabel("步")
    left.set_title("准确率")
    left.legend(frameon=False, fontsize=9, loc="lower right", ncols=4)
    bars = right.bar([str(heads) for heads in speeds], list(speeds.values()), color="#2f6fab")
    right.bar_label(bars, fmt="%.1f", fontsize=8)
    right.set_ylim(0, max(speeds.values()) * 1.1)
    right.set_xlabel("头数")
    right.set_title("每一步的用时（毫秒）")
    for i, axis in enumerate(bottom.subplots(1, len(weights), squeeze=False)[0]):
        shares = gaze(weights[i])
        back = max(range(len(shares)), key=shares.__getitem__)
        axis.imshow(weights[i].numpy(), cmap="Blues", vmin=0, vmax=1)
        axis.set_title(f"第 {i + 1} 个头：前 {back} 个 {shares[back]:.0%}", fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
    bottom.supxlabel("行：谁在看　列：看谁", fontsize=10)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    """同样的题、同样的维度，只改头数，各训练一次。"""
    parser = argparse.ArgumentParser(description="实验　头数多少合适")
    parser.add_argument("--look", type=int, default=4, help="要看几处，1 到 4（默认：4）")
    parser.add_argument("--dim", type=int, default=64, help="嵌入维度，4 的倍数（默认：64）")
    parser.add_argument("--steps", type=int, default=300, help="每种头数训练几步（默认：300）")
    parser.add_argument("--quick", action="store_true", help="只试 1、2、4 个头，150 步，20 秒以内跑完")
    args = parser.parse_args()
    if not 1 <= args.look <= len(PLACES):
        parser.error(f"--look 应在 1 到 {len(PLACES)} 之间，不能是 {args.look}")
    if not 4 <= args.dim <= 1024 or args.dim % 4:
        parser.error(f"--dim 应是 4 到 1024 之间的 4 的倍数，才能分给 4 个头，不能是 {args.dim}")
    if args.steps < 20:
        parser.error(f"--steps 至少是 20，不能是 {args.steps}")
    steps = 150 if args.quick else args.steps
    counts = [h for h in (1, 2, 4) + (() if args.quick else (8, 16, 32, 64)) if args.dim % h == 0]
    print(f"题目：{V} 种符号，说出前面第 {'、'.join(map(str, PLACES[: args.look]))} 个各是什么；乱猜的准确率是 {1 / V:.1%}")

    models, losses, curves, speeds = {}, {}, {}, {}
    print("头数　每头维度　　参数　　最后的损失　最后的准确率　到 99% 用了几步　每步毫秒")
    for h in counts:
        models[h], losses[h], curves[h], speeds[h] = train(args.dim, h, args.look, steps)
        solved = next((i + 1 for i, hit in enumerate(curves[h]) if hit >= 0.99), None)
        count = sum(p.numel() for p in models[h].att.parameters())
        print(f"{h:4}{args.dim // h:9}{count:11,}{sum(losses[h][-10:]) / 10:13.3f}{sum(curves[h][-10:]) / 10:14.1%}{solved or '没有到':>12}{speeds[h]:14.1f}")

    shown = min((h for h in counts if h >= args.look), default=counts[-1])  # 头数正好的那个
    weights = models[shown].att.last_weights.mean(dim=0)  # (h, t, t)　一批里平均：看的是位置，与符号无关
    path = OUTPUTS / "head_count.png"
    draw(curves, speeds, weights, path)
    print(f"图已写到 {path}")
    print(f"\n{shown} 个头的模型，每个头最爱看")
    favourite = []
    for i, each in enumerate(weights):
        shares = gaze(each)
        favourite.append(max(range(len(shares)), key=shares.__getitem__))
        print(f"  第 {i + 1} 个头　前面第 {favourite[-1]} 个，{shares[favourite[-1]]:.0%}" if favourite[-1] else f"  第 {i + 1} 个头　自己，{shares[0]:.0%}")

    final = {h: sum(hits[-10:]) / 10 for h, hits in curves.items()}
    able = [h for h in counts if final[h] >= 0.99]
    print(f"\n所以：要看 {args.look} 处，" + (f"这次 {able[0]} 个头起就做得到（准确率 99% 以上）" if able else f"这次 {steps} 步都没有哪种头数做到 99%") + f"；1 个头的准确率是 {final[1]:.0%}。")
    if args.look > 1:
        print(f"　　　{shown} 个头合起来看了 {len(set(favourite) & set(PLACES[: args.look]))} 处要看的地方。")
    slower = speeds[counts[-1]] / speeds[1]
    print(f"　　　{counts[-1]} 个头每一步的用时是 1 个头的 {slower:.1f} 倍" + (f"：投影的乘加一样多，可是权重表有 {counts[-1]} 张。" if slower > 1.3 else "，差不多。"))

    print("\n这个数字对吗？")
    sizes = {sum(p.numel() for p in model.att.parameters()) for model in models.values()}
    confirm(f"不论几个头，注意力都是 4d² + d = {4 * args.dim**2 + args.dim:,} 个参数", sizes == {4 * args.dim**2 + args.dim}, "每个头各给了一套 d × d 的矩阵")
    begin = [each[0] for each in losses.values()]
    confirm(f"刚开始，损失都接近 ln {V} = 2.08（{min(begin):.2f} 到 {max(begin):.2f}）", all(abs(each - 2.08) < 0.5 for each in begin), "初始权重太大")
    rows = weights.sum(dim=-1)
    confirm("每个头的每一行之和为 1，右上角为 0", torch.allclose(rows, torch.ones_like(rows), atol=1e-5) and weights.triu(1).sum().item() == 0, "softmax 的 dim 不对，或掩码没有生效")


if __name__ == "__main__":
    main()
