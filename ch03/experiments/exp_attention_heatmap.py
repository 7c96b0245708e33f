"""第 3 章 · 实验　注意力到底在看哪里？

问题：　多头注意力的每个头，真的会关注不同的东西吗？还没训练时呢？训练之后呢？
先猜：　未训练的头，权重应该接近平均，还是已经有明显偏好？（先想 10 秒，再运行）
看点：　① 右上角全是灰的：因果掩码生效；② 每一行加起来是 100（四舍五入会差 1）；③ 两个头的花纹不同，但都不鲜明；
        ④ 第二张图是第 5 章训练出的小模型（先运行 python ch05/main/gpt_train.py）：每个头的深色格子都落在不同的地方，偏好鲜明了。
动手改：1. --heads 8 --seed 1：换几个头数和种子，没训练的头仍离平均不远。
        2. 把 MultiHeadAttention 里的 -torch.inf 改成 0：热图的右上角"漏"了，第一条自查变成 ✗。
        3. 把 main 里的 x 改成 torch.randn(…) * 5：权重变得"赢者通吃"，最后一条自查变成 ✗。

运行：
    python ch03/experiments/exp_attention_heatmap.py            # 图片写到 ch03/outputs/
    python ch03/experiments/exp_attention_heatmap.py --heads 4 --seed 1
    python ch03/experiments/exp_attention_heatmap.py --prompt "It was a long way to the city"    # 换一句话，看训练过的头
    约 3 秒，0.5 GB；有第 5 章的模型时约 5 秒，0.5 GB（2 核 CPU）
"""

import argparse
import os
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import tiktoken
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from matplotlib.ticker import PercentFormatter

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
CHECKPOINT = OUTPUTS.parents[1] / "ch05" / "outputs" / "gpt_mini.pth"  # 第 5 章训练出的小模型，没有它就只看没训练过的
WORDS = ["Your", "journey", "starts", "with", "one", "step"]


# region 改写 ch03/main: MultiHeadAttention
class MultiHeadAttention(nn.Module):
    """多头注意力，外加记住最近一次的注意力权重。（原版详解见 ch03/main/example_05_multihead_attention.py）"""

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


# region 沿用 ch04/main: LayerNorm, GELU, FeedForward, TransformerBlock, GPTModel
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


class FeedForward(nn.Module):
    """前馈网络（feed forward）：先升到 4 倍维度，过激活函数，再降回来。（详解见 ch04/main/example_03_feedforward.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(cfg["emb_dim"], 4 * cfg["emb_dim"]),
            GELU(),
            nn.Linear(4 * cfg["emb_dim"], cfg["emb_dim"]),
        )

    def forward(self, x):
        return self.layers(x)


class TransformerBlock(nn.Module):
    """Transformer 块：注意力 + 前馈网络，各自先归一化、再用残差连接加回去。（详解见 ch04/main/example_05_transformer_block.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.att = MultiHeadAttention(
            d_in=cfg["emb_dim"],
            d_out=cfg["emb_dim"],
            context_length=cfg["context_length"],
            num_heads=cfg["n_heads"],
            dropout=cfg["drop_rate"],
            qkv_bias=cfg["qkv_bias"],
        )
        self.ff = FeedForward(cfg)
        self.norm1 = LayerNorm(cfg["emb_dim"])
        self.norm2 = LayerNorm(cfg["emb_dim"])
        self.drop_shortcut = nn.Dropout(cfg["drop_rate"])

    def forward(self, x):
        shortcut = x
        x = self.norm1(x)
        x = self.att(x)  # (b, t, d)
        x = self.drop_shortcut(x)
        x = x + shortcut
        shortcut = x
        x = self.norm2(x)
        x = self.ff(x)  # (b, t, d)
        x = self.drop_shortcut(x)
        return x + shortcut


class GPTModel(nn.Module):
    """GPT：词嵌入 + 位置嵌入 → 一摞 Transformer 块 → 归一化 → 对每个位置给出整个词表的分数。（详解见 ch04/main/example_06_gpt_model.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.Sequential(*[TransformerBlock(cfg) for _ in range(cfg["n_layers"])])
        self.final_norm = LayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)

    def forward(self, in_idx):
        t = in_idx.shape[1]
        if t > self.pos_emb.num_embeddings:
            raise ValueError(f"输入有 {t} 个词元，超过了模型的上下文长度 {self.pos_emb.num_embeddings}")
        tok_embeds = self.tok_emb(in_idx)  # (b, t, d)
        pos_embeds = self.pos_emb(torch.arange(t, device=in_idx.device))  # (t, d)
        x = tok_embeds + pos_embeds  # (b, t, d)
        x = self.drop_emb(x)
        x = self.trf_blocks(x)  # (b, t, d)
        x = self.final_norm(x)
        return self.out_head(x)  # (b, t, V)


# endregion


# region 沿用 setup/find_data.py: find_data
def find_data(*names):
    """到几个数据文件夹里依次找，返回找到的第一个；都没有，就说先运行哪条命令，退出码 2。（详解见 setup/find_data.py）"""
    here = Path(__file__ if "__file__" in globals() else "x").resolve()
    root = next((folder for folder in here.parents if (folder / "setup" / "data").is_dir()), Path())
    for folder in [os.environ.get("LLM_DATA_DIR"), root / "setup" / "downloads", root / "setup" / "data", root / "ch05" / "outputs"]:
        for name in names:
            path = Path(folder or "") / name
            if folder and (path.is_file() or any(path.glob("*"))):
                return path
    commands = {"tiktoken": "setup/prepare.py", "gpt_mini.pth": "ch05/main/gpt_train.py（约 90 秒）"}
    commands |= {f"gpt2-{size}.pth": f"ch05/main/gpt_download.py --size {size}" for size in ("124M", "355M", "774M", "1558M")}
    print(f"找不到 {names[0]}，请先运行 python {commands.get(names[0], 'setup/download.py')}", file=sys.stderr)
    sys.exit(2)


# endregion

os.environ["TIKTOKEN_CACHE_DIR"] = str(find_data("tiktoken"))  # GPT-2 的词表由 setup/run.sh 放好，不联网


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


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
    """
    heads, t, _ = weights.shape
    columns = min(heads, 4)  # 一行最多 4 个头，再多就换行，图不会宽得看不清
    rows = -(-heads // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.4 * columns + 1.2, 3.4 * rows + 1.2), squeeze=False, layout="constrained")
    colors = plt.get_cmap("Blues").with_extremes(bad="0.88")  # 看不到的格子画成灰色，与"看得到、但权重很小"分开
    visible = torch.tril(torch.ones(t, t, dtype=torch.bool))
    for head, axis in enumerate(axes.flat):
        image = axis.imshow(weights[head].where(visible | (weights[head] > 0), torch.nan).numpy(), cmap=colors, vmin=0, vmax=1)
        for i, j in weights[head].nonzero().tolist():
            value = weights[head, i, j].item()
            axis.text(j, i, f"{value * 100:.0f}", ha="center", va="center", fontsize=9, color="white" if value > 0.6 else "black")
        axis.set_xticks(range(t), WORDS, rotation=45, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(t) if head % columns == 0 else [], WORDS if head % columns == 0 else [])
        axis.set_title(f"第 {head + 1} 个头")
    figure.supylabel("谁在看（query）")
    figure.supxlabel("看谁（key）　灰色：后面的词，看不到")
    figure.colorbar(image, ax=axes, shrink=0.8, format=PercentFormatter(1), label="注意力权重")

    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight", pad_inches=0.15)  # tight：按实际内容裁边，否则中文标题的顶上会被切掉
    plt.close(figure)


def draw_trained(layers, far, sentence, path):
    """画训练过的模型：每层一行，每个头一格，格子上方写着它离平均分配多远。

    参数:
        layers (Tensor): 各层的权重，(n, h, t, t)，n 是层数
        far (list[list[float]]): 每层每个头离平均分配多远
        sentence (str): 送进去的话
        path (Path): 图片写到哪里
    """
    rows, columns, t, _ = layers.shape
    figure, axes = plt.subplots(rows, columns, figsize=(1.6 * columns + 0.6, 1.8 * rows + 0.7), squeeze=False, layout="constrained")
    hidden = torch.triu(torch.ones(t, t, dtype=torch.bool), diagonal=1)
    colors = plt.get_cmap("Blues").with_extremes(bad="0.9")
    for row, column in ((row, column) for row in range(rows) for column in range(columns)):
        axis = axes[row, column]
        axis.imshow(layers[row, column].masked_fill(hidden, torch.nan).numpy(), cmap=colors, vmin=0, vmax=1)
        axis.set_title(f"离平均 {far[row][column]:.0%}", fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
    for row in range(rows):
        axes[row, 0].set_ylabel(f"第 {row + 1} 层", fontsize=11)
    figure.supxlabel(f"行：谁在看　列：看谁　「{sentence}」".replace("$", r"\$"), fontsize=10)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def look_at_trained(prompt, path):
    """把一句话送进训练过的模型，画出并统计每个头的偏好；没训练过的同样模型作对照。

    参数:
        prompt (str): 一句话
        path (Path): 图片写到哪里

    异常:
        ValueError: 这句话太短或太长
    """
    ckpt = torch.load(CHECKPOINT, map_location="cpu", weights_only=True)
    model, fresh = GPTModel(ckpt["config"]).eval(), GPTModel(ckpt["config"]).eval()
    model.load_state_dict(ckpt["model"])
    tokenizer, limit = tiktoken.get_encoding("gpt2"), min(48, ckpt["config"]["context_length"])
    ids = torch.tensor([tokenizer.encode(prompt, disallowed_special=())])  # (b, t) = (1, t)
    if not 3 <= ids.shape[1] <= limit:
        raise ValueError(f"--prompt 应有 3 到 {limit} 个词元，这句话有 {ids.shape[1]} 个")
    n, h, t = ckpt["config"]["n_layers"], ckpt["config"]["n_heads"], ids.shape[1]
    average = torch.tril(torch.ones(t, t))
    average = average / average.sum(dim=-1, keepdim=True)
    for each in (fresh, model):
        with torch.no_grad():
            each(ids)
    untrained, layers = (torch.stack([block.att.last_weights[0] for block in each.trf_blocks]) for each in (fresh, model))  # 各 (n, h, t, t)　n 是层数
    before, far = ([[difference(weights, average) for weights in layer] for layer in each] for each in (untrained, layers))
    draw_trained(layers, far, prompt, path)
    print(f"\n训练过的模型，{n} 层 × {h} 个头，送进 {t} 个词元：{prompt!r}　图已写到 {path}")
    for i in range(n):
        # 这一层最鲜明的一格；前两行可看的太少，权重大不稀奇，不算。
        place = layers[i, :, 2:].argmax().item()
        head, query, key = place // ((t - 2) * t), place // t % (t - 2) + 2, place % t
        words = [tokenizer.decode([token]) for token in ids[0].tolist()]
        print(f"  第 {i + 1} 层最鲜明的一格：第 {head + 1} 个头，{words[query]!r} 把 {layers[i, head, query, key]:.0%} 的权重给了 {words[key]!r}")
    mean = [sum(map(sum, each)) / (n * h) for each in (before, far)]
    print(f"离平均分配有多远，{n * h} 个头的平均：没训练的同样模型 {mean[0]:.0%}，训练过的 {mean[1]:.0%}。" + ("偏好是训练出来的。" if mean[1] > 2 * mean[0] else ""))


def main():
    """画出每个头的注意力热图，量一量各头差多少，并检查因果掩码；有训练过的模型就再看看它。"""
    parser = argparse.ArgumentParser(description="实验　注意力热图")
    parser.add_argument("--heads", type=int, default=2, help="头数，只能是 1、2、4、8，因为要整除 8（默认：2）")
    parser.add_argument("--seed", type=int, default=123, help="随机种子，换一个就换一组初始权重（默认：123）")
    parser.add_argument("--prompt", default="Every autumn, when the first ships of the new season came up the river", help="送进训练过的模型的话")
    args = parser.parse_args()
    if args.heads < 1:
        parser.error(f"--heads 至少是 1，不能是 {args.heads}")
    if not 0 <= args.seed < 2**63:
        parser.error(f"--seed 应是 0 到 2 的 63 次方之间的整数，不能是 {args.seed}")

    torch.manual_seed(args.seed)
    x = torch.randn(1, len(WORDS), 8)  # (b, t, d)：随机嵌入就够了，这里只看注意力的"形状"
    try:
        attention = MultiHeadAttention(8, 8, context_length=len(WORDS), dropout=0.0, num_heads=args.heads)
    except ValueError as error:
        parser.error(str(error))
    attention(x)
    weights = attention.last_weights[0]  # (h, t, t)
    draw(weights, OUTPUTS / "attention_heatmap.png")
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

    if CHECKPOINT.is_file():
        try:
            look_at_trained(args.prompt, OUTPUTS / "attention_trained.png")
        except ValueError as error:
            parser.error(str(error))
    else:
        print("\n想看训练过的头：先运行 python ch05/main/gpt_train.py（约 90 秒），再运行一次本脚本。")

    print("\n这个数字对吗？")
    future = weights.triu(diagonal=1).sum().item()
    confirm(f"右上角权重之和为 0（得到 {future:.1f}）：看不到未来", future == 0, "掩码填的不是 -inf，或加在了 softmax 之后")
    error = (weights.sum(dim=-1) - 1).abs().max().item()
    confirm(f"每行之和为 1（最大误差 {error:.0e}）", error < 1e-6, "softmax 的 dim 不是最后一维")
    confirm(f"没训练的头都离平均不远（最远 {max(distances):.0%}，应在 50% 以内）", max(distances) < 0.5, "忘了除以 √k，或输入、初始权重太大")


if __name__ == "__main__":
    main()
