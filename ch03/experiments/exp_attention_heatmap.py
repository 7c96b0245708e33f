"""第 3 章 · 实验　注意力到底在看哪里？

问题：　多头注意力的每个头，真的会关注不同的东西吗？还没训练时呢？
先猜：　未训练的头，权重应该接近平均，还是已经有明显偏好？（先想 10 秒，再运行）
看点：　① 右上角全是灰的：因果掩码生效；② 每一行加起来是 100（四舍五入会差 1）；③ 两个头的花纹不同，但都不鲜明。
动手改：把 --heads 改成 1、4、8，--seed 换几个；把 MultiHeadAttention 里的 -torch.inf 改成 0，看热图哪里"漏"了；
        把 main 里的 x 改成 torch.randn(…) * 5，看权重怎样变得"赢者通吃"。

运行：
    python ch03/experiments/exp_attention_heatmap.py            # 图片写到 ch03/outputs/
    python ch03/experiments/exp_attention_heatmap.py --heads 4 --seed 1
    约 3 秒，0.3 GB（2 核 CPU）
"""

import argparse
import re
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
from matplotlib.ticker import PercentFormatter

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
WORDS = ["Your", "journey", "starts", "with", "one", "step"]


# region 改写 ch03/main/multihead_attention.py: MultiHeadAttention
class MultiHeadAttention(nn.Module):
    """多头注意力，外加记住最近一次的注意力权重。（原版详解见 ch03/main/multihead_attention.py）"""

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
        self.last_weights = None  # 改：多留一个出口，把注意力权重交给画图代码

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


# region 沿用 setup/plot_style.py: use_chinese_font
def use_chinese_font():
    """让 matplotlib 能画中文；找不到中文字体时返回 False。（详解见 setup/plot_style.py）"""
    import matplotlib.pyplot as plt
    from matplotlib import font_manager
    installed = {font.name for font in font_manager.fontManager.ttflist}
    wanted = ["PingFang SC", "Hiragino Sans GB", "Heiti TC", "Arial Unicode MS", "Microsoft YaHei", "SimHei", "Noto Sans CJK SC", "WenQuanYi Micro Hei"]
    found = [name for name in wanted if name in installed]
    plt.rcParams["font.sans-serif"] = found + plt.rcParams["font.sans-serif"]
    plt.rcParams["axes.unicode_minus"] = False
    return bool(found)


# endregion


# region 沿用 setup/self_check.py: safe_console, confirm
def safe_console():
    """让不支持 UTF-8 的终端也能运行本项目的脚本：印不出的字符改印它的名字，而不是报错退出。（详解见 setup/self_check.py）"""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="namereplace")


def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


# region 沿用 setup/chinese_cli.py: ChineseParser
class ChineseParser(argparse.ArgumentParser):
    """argparse 的中文版：帮助是中文，用错参数时只说一句话，退出码 2。（详解见 setup/chinese_cli.py）"""

    def __init__(self, description):
        super().__init__(description=description, add_help=False, allow_abbrev=False)
        self._positionals.title, self._optionals.title = "参数", "选项"
        self.add_argument("-h", "--help", action="help", help="显示这份说明")

    def format_help(self):
        return super().format_help().replace("usage: ", "用法：", 1)

    def error(self, message):
        for english, chinese in [
            (r"unrecognized arguments: (.+)", r"不认识的参数 \1"),
            (r"the following arguments are required: (.+)", r"缺少参数 \1"),
            (r"argument (\S+): expected .+", r"\1 后面少了一个值"),
            (r"argument (\S+): invalid choice: (.+) \(choose from (.+)\)", r"\1 不能是 \2，只能是 \3 之一"),
            (r"argument (\S+): invalid int value: (.+)", r"\1 要的是整数，不是 \2"),
            (r"argument (\S+): invalid float value: (.+)", r"\1 要的是数字，不是 \2"),
            (r"argument (\S+): (.+)", r"\1：\2"),
        ]:
            message, found = re.subn(f"^{english}$", chinese, message, flags=re.DOTALL)
            if found:
                break
        self.exit(2, f"出错了：{message}（用 --help 看用法）\n")


# endregion


def difference(first, second):
    """两张注意力权重表平均差多少：要把多大比例的权重挪个位置，才能从一张变成另一张。

    这个量叫全变差距离（total variation distance）：0 表示完全相同，1 表示没有一点重合。

    参数:
        first (Tensor): 权重，(t, t)，每行之和为 1
        second (Tensor): 同上

    返回:
        float: 各行的平均值；第一行总是只看自己，不算在内
    """
    return ((first - second).abs().sum(dim=-1) / 2)[1:].mean().item()


def draw(weights, path):
    """画热图：每个头一格，行是"谁在看"，列是"看谁"，格里写着百分比。

    参数:
        weights (Tensor): 注意力权重，(h, t, t)
        path (Path): 图片写到哪里

    异常:
        OSError: 写不了这个文件
    """
    chinese = use_chinese_font()
    heads, t, _ = weights.shape
    columns = min(heads, 4)  # 一行最多 4 个头，再多就换行，图不会宽得看不清
    rows = -(-heads // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.4 * columns + 1.2, 3.4 * rows + 1.2), squeeze=False, layout="constrained")
    colors = plt.get_cmap("Blues").with_extremes(bad="0.88")  # 看不到的格子画成灰色，与"看得到、但权重很小"分开
    visible = torch.tril(torch.ones(t, t, dtype=torch.bool))
    for head, axis in enumerate(axes.flat):
        image = axis.imshow(weights[head].where(visible | (weights[head] > 0), torch.nan), cmap=colors, vmin=0, vmax=1)
        for i, j in weights[head].nonzero().tolist():
            value = weights[head, i, j].item()
            axis.text(j, i, f"{value * 100:.0f}", ha="center", va="center", fontsize=9, color="white" if value > 0.6 else "black")
        axis.set_xticks(range(t), WORDS, rotation=45, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(t) if head % columns == 0 else [], WORDS if head % columns == 0 else [])
        axis.set_title(f"第 {head + 1} 个头" if chinese else f"head {head + 1}")
    figure.supylabel("谁在看（query）" if chinese else "query")
    figure.supxlabel("看谁（key）　灰色：后面的词，看不到" if chinese else "key (grey: future, masked)")
    figure.colorbar(image, ax=axes, shrink=0.8, format=PercentFormatter(1), label="注意力权重" if chinese else "attention weight")

    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight", pad_inches=0.15)  # tight：按实际内容裁边，否则中文标题的顶上会被切掉
    plt.close(figure)


def main():
    """画出每个头的注意力热图，量一量各头差多少，并检查因果掩码。"""
    safe_console()
    parser = ChineseParser("实验　注意力热图")
    parser.add_argument("--heads", type=int, default=2, help="头数，只能是 1、2、4、8，因为要整除 8（默认：2）")
    parser.add_argument("--seed", type=int, default=123, help="随机种子，换一个就换一组初始权重（默认：123）")
    args = parser.parse_args()
    if args.heads < 1:
        parser.error(f"--heads 至少是 1，不能是 {args.heads}")
    if not 0 <= args.seed < 2**63:
        parser.error(f"--seed 应是 0 到 2 的 63 次方之间的整数，不能是 {args.seed}")

    torch.manual_seed(args.seed)
    x = torch.randn(1, len(WORDS), 8)  # (b, t, d)：随机嵌入就够了，这里只看注意力的"形状"
    try:
        attention = MultiHeadAttention(8, 8, context_length=len(WORDS), dropout=0.0, num_heads=args.heads)
        attention(x)
        weights = attention.last_weights[0]  # (h, t, t)
        draw(weights, OUTPUTS / "attention_heatmap.png")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"热图已写到 {OUTPUTS / 'attention_heatmap.png'}")

    # 平均分配：第 i 个词对自己和前面的词一视同仁，各占 1/i。
    average = torch.tril(torch.ones(len(WORDS), len(WORDS)))
    average = average / average.sum(dim=-1, keepdim=True)
    print("\n每个头离平均分配有多远（0% 是完全平均，100% 是毫无重合）")
    distances = [difference(each, average) for each in weights]
    for head, distance in enumerate(distances, start=1):
        print(f"  第 {head} 个头　{distance:.0%}")
    pairs = [(i, j) for i in range(args.heads) for j in range(i)]
    if pairs:
        print(f"头与头之间平均相差 {sum(difference(weights[i], weights[j]) for i, j in pairs) / len(pairs):.0%}")
    if max(distances) < 0.5:
        print("所以：没训练的头都离平均不远，" + ("互相已有不同，但只是初始权重碰巧不同；" if pairs else "") + "鲜明的偏好要靠训练得来。")

    print("\n这个数字对吗？")
    future = weights.triu(diagonal=1).sum().item()
    confirm(f"右上角权重之和为 0（得到 {future:.1f}）：看不到未来", future == 0, "掩码填的不是 -inf，或加在了 softmax 之后")
    error = (weights.sum(dim=-1) - 1).abs().max().item()
    confirm(f"每行之和为 1（最大误差 {error:.0e}）", error < 1e-6, "softmax 的 dim 不是最后一维")
    confirm(f"没训练的头都离平均不远（最远 {max(distances):.0%}，应在 50% 以内）", max(distances) < 0.5, "忘了除以 √k，或输入、初始权重太大")


if __name__ == "__main__":
    main()
