"""第 4 章 · 实验　词嵌入和输出层共用一份权重，是赚是赔？

问题：　GPT-2 让输出层与词嵌入共用一份权重（weight tying），省下 3860 万个参数；书里分开存。共用之后，学得更好还是更差？
先猜：　词嵌入按 nn.Embedding 的默认初始化，标准差是 1。直接拿它当输出层，没训练时的损失还会是 ln 50257 = 10.82 吗？（先想 10 秒，再运行）
看点：　① 共用之后，参数、优化器的状态都少一大块；② 初始化不改就共用，一开始的损失高得离谱：logits 太大了；
        ③ 共用的那份权重，梯度是两头的梯度之和；④ 三条曲线，谁在下面。
动手改：1. 把 SMALL_STD 从 0.02 改成 0.2：共用的初始损失又变高了。
        2. --emb-dim 64：词嵌入占的比例更大，共用省下的比例也更大。
        3. 把 tie 里的 model.out_head.weight = model.tok_emb.weight 改成 model.out_head.weight.data.copy_(model.tok_emb.weight)（只复制了一次，不是共用）：
           一开始相同，走一步就各走各的，参数也没有少，自查变成 ✗。

运行：
    python ch04/experiments/exp_weight_tying.py               # 图片写到 ch04/outputs/
    python ch04/experiments/exp_weight_tying.py --quick
    约 70 秒，0.8 GB（2 核 CPU）

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　k 每个头的维度　V 词表大小
"""

import argparse
import math
import os
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import tiktoken
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
SMALL_STD = 0.02  # GPT-2 的词嵌入就是这样初始化的：当输出层用时，logits 才不会太大


# region 沿用 ch03/main: MultiHeadAttention
class MultiHeadAttention(nn.Module):
    """带因果掩码的多头自注意力：h 个头并行计算，再拼接、混合。（详解见 ch03/main/example_05_multihead_attention.py）"""

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


def tie(model):
    """让输出层与词嵌入共用一份权重：两边形状都是 (V, d)，换成同一个 Parameter 就行。

    参数:
        model (GPTModel): 模型，直接改它
    """
    model.out_head.weight = model.tok_emb.weight


def build(kind, cfg):
    """建一个模型；三种的随机数从同一个种子取，各块的初始权重逐位相同，只差两头。

    参数:
        kind (str): "分开"、"共用" 或 "共用＋小初始化"
        cfg (dict): 模型配置

    返回:
        GPTModel: 模型
    """
    torch.manual_seed(123)
    model = GPTModel(cfg)
    if kind != "分开":
        tie(model)
    if kind == "共用＋小初始化":
        with torch.no_grad():
            model.tok_emb.weight.mul_(SMALL_STD)  # 默认的标准差是 1，乘 0.02 就是 0.02
            model.pos_emb.weight.mul_(SMALL_STD)  # 位置嵌入一起缩小，否则词的信息会被位置盖住
    return model


def loss_of(model, batch):
    """一批的损失。

    参数:
        model (GPTModel): 模型
        batch (Tensor): 词元编号，(b, t)；前 t − 1 个是输入，后 t − 1 个是目标

    返回:
        Tensor: 损失
    """
    return nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def train(model, ids, held, steps, batch_size, length, title):
    """训练，每隔几步看一次验证损失。

    参数:
        model (GPTModel): 模型
        ids (Tensor): 训练文本的编号，一长串
        held (Tensor): 验证文本，(n, t)
        steps (int): 几步
        batch_size (int): 批大小
        length (int): 每个样本几个词元
        title (str): 进度条上的名字

    返回:
        tuple[list, float, int]: 每次验证一项（步数，损失）；每步平均几秒；优化器的状态占几个字节
    """
    torch.manual_seed(1)  # 三种模型看同样的批
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    curve, spent = [], 0.0
    for step in tqdm(range(steps + 1), desc=title, unit="步", leave=False):
        if step % max(1, steps // 20) == 0:
            with torch.no_grad():
                curve.append((step, loss_of(model, held).item()))
        start = time.perf_counter()
        batch = torch.stack([ids[begin : begin + length + 1] for begin in torch.randint(len(ids) - length, (batch_size,)).tolist()])  # (b, t)
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
        spent += time.perf_counter() - start
    state = sum(value.nbytes for each in optimizer.state.values() for value in each.values() if value.ndim)
    return curve, spent / (steps + 1), state


def gradient_gap(cfg, batch):
    """共用时的梯度，与分开时两头的梯度之和，相差多少。

    参数:
        cfg (dict): 模型配置
        batch (Tensor): 一批，(b, t)

    返回:
        float: 最大的差，除以梯度最大的绝对值
    """
    tied, separate = build("共用＋小初始化", cfg), build("分开", cfg)
    separate.load_state_dict(tied.state_dict())  # 同样的数，但是两份
    for model in (tied, separate):
        loss_of(model, batch).backward()
    both = separate.tok_emb.weight.grad + separate.out_head.weight.grad  # (V, d)
    return ((tied.tok_emb.weight.grad - both).abs().max() / both.abs().max()).item()


def draw(curves, path):
    """画三条验证损失。

    参数:
        curves (dict): 名字 → 每次验证一项（步数，损失）
        path (Path): 图片写到哪里
    """
    figure, axis = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for name, curve in curves.items():
        axis.plot(*zip(*curve), marker=".", label=name)
    axis.axhline(math.log(50257), color="gray", linestyle=":")
    axis.annotate("ln 50257 = 10.82", (0.99, math.log(50257)), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8, color="gray")
    axis.set_yscale("log")
    ticks = [4, 6, 8, 10, 20, 50, 100, 200]
    axis.set_yticks(ticks, ticks)
    axis.minorticks_off()
    axis.set_xlabel("步")
    axis.set_ylabel("验证损失（对数刻度）")
    axis.legend(fontsize=8)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


# region 沿用 setup/find_data.py: find_data, read_text
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


def read_text(path):
    """读一个文本文件；不是能用来训练的文本时，用一句中文说清楚。（详解见 setup/find_data.py）"""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise ValueError(f"读不了 {path}：文件不存在，或不是 UTF-8 编码的文本（请用编辑器另存为 UTF-8）") from None
    if "\0" in text or not text.strip():
        raise ValueError(f"{path} 是空的，或是二进制文件，请换一个文本文件")
    return text


# endregion

os.environ["TIKTOKEN_CACHE_DIR"] = str(find_data("tiktoken"))  # GPT-2 的词表由 setup/run.sh 放好，不联网


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def main():
    """三种做法各训练一次，比参数、速度和验证损失。"""
    parser = argparse.ArgumentParser(description="实验　词嵌入和输出层共用一份权重")
    parser.add_argument("--emb-dim", type=int, default=128, help="嵌入维度 d，要能被 32 整除（默认：128）")
    parser.add_argument("--steps", type=int, default=80, help="各训练几步（默认：80）")
    parser.add_argument("--text", type=Path, help="训练用的文本（默认：the-verdict.txt，没有就用自带的 story-en.txt）")
    parser.add_argument("--quick", action="store_true", help="只训练 12 步，样本也短")
    args = parser.parse_args()
    if not 32 <= args.emb_dim <= 1024 or args.emb_dim % 32 != 0:
        parser.error(f"--emb-dim 应在 32 到 1024 之间，并且能被 32（每个头的维度）整除，不能是 {args.emb_dim}")
    if not 1 <= args.steps <= 10000:
        parser.error(f"--steps 应在 1 到 10000 之间，不能是 {args.steps}")
    steps, length, batch_size = (min(args.steps, 12), 32, 2) if args.quick else (args.steps, 64, 4)
    try:
        path = args.text or find_data("the-verdict.txt", "story-en.txt")
        ids = torch.tensor(tiktoken.get_encoding("gpt2").encode(read_text(path), disallowed_special=()))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if len(ids) < 20 * length:
        parser.error(f"{path} 只有 {len(ids)} 个词元，至少要 {20 * length} 个，请换长一点的文本")
    cut = len(ids) * 9 // 10
    held = ids[cut:][: (len(ids) - cut) // (length + 1) * (length + 1)].view(-1, length + 1)[:8]  # (n, t)
    cfg = {"vocab_size": 50257, "context_length": length, "n_layers": 4, "drop_rate": 0.0, "qkv_bias": False}
    cfg |= {"emb_dim": args.emb_dim, "n_heads": args.emb_dim // 32}
    print(f"4 层，d = {args.emb_dim}，词表 50257；文本 {path.name}，{len(ids):,} 个词元，后一成用来验证；各训练 {steps} 步", flush=True)

    curves, counts, table = {}, {}, {}
    for kind in ("分开", "共用", "共用＋小初始化"):
        model = build(kind, cfg)
        counts[kind] = sum(p.numel() for p in model.parameters())  # parameters() 认得同一个 Parameter，只数一次
        curves[kind], seconds, state = train(model, ids[:cut], held, steps, batch_size, length, kind)
        best = min(loss for _, loss in curves[kind])
        table[kind] = (counts[kind], 8 * counts[kind] + state, seconds, curves[kind][0][1], best)
        shared = model.out_head.weight is model.tok_emb.weight
        print(f"  {kind.ljust(7, '　')}参数 {counts[kind]:>11,}　权重、梯度和动量 {table[kind][1] / 2**20:6.1f} MB　每步 {seconds * 1000:5.0f} 毫秒　", end="")
        print(f"验证损失 {curves[kind][0][1]:7.2f} → 最低 {best:.3f}　{'同一份权重' if shared else '两份权重'}")
    draw(curves, OUTPUTS / "weight_tying.png")
    print(f"图片已写到 {OUTPUTS / 'weight_tying.png'}")

    print("\n所以（都是这一次量的）：")
    saved = counts["分开"] - counts["共用"]
    print(f"  共用省下 {saved:,} 个参数，是全部的 {saved / counts['分开']:.0%}；GPT-2 small 省 38,597,376 个，24%，xl 只省 5%。")
    print(f"  初始化不改就共用，开始时损失 {table['共用'][3]:.0f}：logits 是两个长向量的点积，标准差约 √d = {math.sqrt(args.emb_dim):.0f}，还没学就"
          f"{'极有把握地' if table['共用'][3] > 12 else ''}乱猜；初始化缩小以后是 {table['共用＋小初始化'][3]:.2f}。")
    order = sorted(table, key=lambda kind: table[kind][4])
    print(f"  {steps} 步之内，验证损失最低的依次是：" + "、".join(f"{kind} {table[kind][4]:.3f}" for kind in order) + "。")
    lead = table[order[1]][4] - table[order[0]][4]
    print(f"  这一次{order[0]}领先 {lead:.3f}，可这只是一段短文、一个小模型、一个种子，不足以下结论。原书作者的经验是分开更好；GPT-2 选的是共用。")

    print("\n这个数字对吗？")
    confirm(f"共用省下的正好是 V × d = 50257 × {args.emb_dim} = {50257 * args.emb_dim:,}", saved == 50257 * args.emb_dim, "复制了一份，而不是共用")
    confirm("训练完，输出层与词嵌入仍是同一份权重", shared, "优化器或 load_state_dict 之后又变成了两份")
    begin = [table[kind][3] for kind in ("分开", "共用＋小初始化")]
    near = all(abs(loss - math.log(50257)) < 0.6 for loss in begin)
    confirm(f"分开、缩小初始化之后，初始损失都接近 ln 50257 = 10.82（{begin[0]:.2f}、{begin[1]:.2f}）", near, "初始的 logits 太大")
    confirm(f"不缩小就共用，初始损失（{table['共用'][3]:.1f}）明显更高", table["共用"][3] > math.log(50257) + 1, "词嵌入不是默认的初始化")
    gap = gradient_gap(cfg, held[:2])
    confirm(f"共用的梯度 = 词嵌入的梯度 + 输出层的梯度（最多差 {gap:.0e}）", gap < 1e-4, "两份权重没有真的共用")


if __name__ == "__main__":
    main()
