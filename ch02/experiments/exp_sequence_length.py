"""第 2 章 · 实验　max_length 取多大？

问题：　每步看的词元一样多（b·t 不变），样本从 60 个词元加长到 960 个，一步训练会慢多少、多占多少内存？
先猜：　词元一样多，矩阵乘法就一样多，是不是差不多？（先想 10 秒，再运行）
看点：　① 内存分成两半看：与 t² 有关的（注意力权重）一路涨，其余不变；② t 不大时，加长几乎不要钱；③ 加长到哪里，注意力权重接近一半。
动手改：1. --heads 改成 8：t² 那一半翻倍，其余不变；改成 2，就只剩一半。
        2. --dim 改成 512：其余那一半大了三倍多，注意力要到更长才占一半。模型越宽，越禁得起长的样本。
        3. 把 cfg 里的 drop_rate 改成 0.1：dropout 又记下自己的掩码和结果，t² 那一半变成 3 份，最后一条自查变成 ✗，并说出原因。

运行：
    python ch02/experiments/exp_sequence_length.py            # 图片写到 ch02/outputs/
    python ch02/experiments/exp_sequence_length.py --heads 8
    约 6 秒，0.7 GB（2 核 CPU）

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　k 每个头的维度　V 词表大小
"""

import argparse
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
LENGTHS = (60, 120, 240, 480, 960)  # 故意不取 2 的幂：免得与模型的各种维度相同，数字节时分不清
VOCAB_SIZE = 512  # 词表取得小，输出层就不会盖过注意力；这里只关心 t


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


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def cut(ids, t):
    """把一长串词元切成 b 个样本，每个 t + 1 个词元（多一个是目标），首尾相接。

    参数:
        ids (Tensor): 词元编号，共 b·t + 1 个
        t (int): 序列长度

    返回:
        Tensor: 样本，(b, t + 1)
    """
    return ids.unfold(0, t + 1, t)  # (b, t + 1)


def train_step(model, ids):
    """一步训练里最费时的部分：前向、损失、反向。

    参数:
        model (nn.Module): 语言模型
        ids (Tensor): 词元编号，(b, t + 1)

    返回:
        float: 损失
    """
    model.zero_grad()
    logits = model(ids[:, :-1])  # (b, t, V)
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    return loss.item()


def saved_bytes(model, ids, heads):
    """前向传播为反向传播记下了多少字节，按"与 t² 有关"和"其余"分开数。

    反向传播要用前向时的中间结果（激活值），它们一直占着内存，直到 backward。训练比推理费内存，主要就在这里。

    参数:
        model (nn.Module): 语言模型
        ids (Tensor): 词元编号，(b, t + 1)
        heads (int): 头数 h

    返回:
        tuple[int, int]: 注意力权重的字节数，其余的字节数；参数不算
    """
    b, t = ids.shape[0], ids.shape[1] - 1
    parameters = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    seen = {}

    def pack(tensor):
        # 同一块内存可能被记下好几次（例如转置前后），按内存的地址去重。
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            is_square = tensor.shape[-2:] == (t, t) and tensor.numel() == b * heads * t * t  # 形状是 (b, h, t, t) 或 (b·h, t, t)
            seen[storage.data_ptr()] = (storage.nbytes(), is_square, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        train_step(model, ids)
    square = sum(size for size, is_square, _ in seen.values() if is_square)
    return square, sum(size for size, _, _ in seen.values()) - square


def draw(rows, tokens, path):
    """画图：左边每个词元的用时，右边激活值的内存，分成两半。

    参数:
        tokens (int): 每步几个词元
        rows (dict): 长度 → 三样：每个词元几微秒、t² 的字节数、其余的字节数
        path (Path): 图片写到哪里
    """
    lengths = list(rows)
    labels = [str(t) for t in lengths]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
    left.plot(labels, [rows[t][0] for t in lengths], "o-")
    left.set(ylim=(0, None), xlabel="序列长度 t", ylabel="微秒")
    left.set_title("每个词元的用时（前向 + 反向）")
    rest, square = [rows[t][2] / 1e6 for t in lengths], [rows[t][1] / 1e6 for t in lengths]
    right.bar(labels, rest, label="其余：与 t 无关", color="#9ecae1")
    right.bar(labels, square, bottom=rest, label="注意力权重：b·h·t²", color="#fdae6b")
    right.set(xlabel="序列长度 t", ylabel="MB")
    right.set_title(f"激活值的内存（每步都是 {tokens} 个词元）")
    right.legend(fontsize=9)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight", pad_inches=0.15)
    plt.close(figure)


def main():
    """词元总数不变，只改切法，量时间和内存。"""
    parser = argparse.ArgumentParser(description="实验　序列长度的代价")
    parser.add_argument("--dim", type=int, default=128, help="嵌入维度 d，要能被头数整除（默认：128）")
    parser.add_argument("--heads", type=int, default=4, help="头数（默认：4）")
    parser.add_argument("--quick", action="store_true", help="只到 480，词元减半，每种长度只量 1 次")
    args = parser.parse_args()
    if not 1 <= args.dim <= 1024 or args.heads < 1:
        parser.error(f"--dim 应在 1 到 1024 之间，--heads 至少是 1，不能是 {args.dim} 和 {args.heads}")
    if args.dim / args.heads in LENGTHS or (args.heads == 1 and 4 * args.dim in LENGTHS):
        parser.error(f"{args.heads} 个头、d = {args.dim} 时，有的激活值恰好也以 (t, t) 结尾，与注意力权重分不清，请换一个 --heads 或 --dim")
    lengths, tokens = (LENGTHS[:-1], 960) if args.quick else (LENGTHS, 1920)  # tokens 是每步的词元总数 b·t，一直不变：变的只是切成几个样本

    cfg = {"vocab_size": VOCAB_SIZE, "context_length": max(lengths), "drop_rate": 0.0, "qkv_bias": False}
    cfg |= {"emb_dim": args.dim, "n_heads": args.heads, "n_layers": 2}
    torch.manual_seed(123)
    try:
        model = GPTModel(cfg)
    except ValueError as error:
        parser.error(str(error))
    print(f"每步 {tokens} 个词元，2 层，d = {args.dim}，{args.heads} 个头", flush=True)
    ids = torch.randint(0, VOCAB_SIZE, (tokens + 1,))  # (b·t + 1,)
    batches = {t: cut(ids, t) for t in lengths}
    times = {t: [] for t in lengths}
    for run in range(2 if args.quick else 5):
        for t, batch in batches.items():  # 轮流量，取最快的一次：机器忽快忽慢时，大家一起受影响
            start = time.perf_counter()
            train_step(model, batch)
            if run:  # 头一次要分配内存，不算
                times[t].append((time.perf_counter() - start) / tokens * 1e6)
    rows = {t: (min(times[t]), *saved_bytes(model, batches[t], args.heads)) for t in lengths}

    for t, (micros, square, rest) in rows.items():
        share = square / (square + rest)
        print(f"  t = {t:4}　b = {tokens // t:2}　每个词元 {micros:6.1f} 微秒　激活值 {(square + rest) / 1e6:6.1f} MB，其中 t² 的 {square / 1e6:6.1f} MB（{share:.0%}）")
    draw(rows, tokens, OUTPUTS / "sequence_length.png")
    print(f"图已写到 {OUTPUTS / 'sequence_length.png'}")

    short, long = lengths[0], lengths[-1]
    half = next((t for t in lengths if rows[t][1] > rows[t][2]), None)
    print(f"\n所以：词元一样多，样本从 {short} 加长到 {long}，每个词元的用时变成 {rows[long][0] / rows[short][0]:.1f} 倍，激活值变成 {sum(rows[long][1:]) / sum(rows[short][1:]):.1f} 倍。")
    print(f"多出来的都在注意力：t² 的部分变成 {rows[long][1] / rows[short][1]:.0f} 倍（b 减到 1/{long // short}，t² 变成 {(long // short) ** 2} 倍），", end="")
    print(f"到 t = {half} 时超过其余的总和。" if half else "但还没超过其余的总和。")
    print("长的样本让模型看得远；禁得起多长，要看模型多宽、内存多大。GPT-2 取 1024。")

    print("\n这个数字对吗？")
    expected = {t: rows[short][1] * t // short for t in lengths}
    confirm("t² 的部分正比于 t（总数 b·t·t = 词元总数 × t）", all(rows[t][1] == expected[t] for t in lengths), "把别的张量也算进来了")
    confirm("其余的部分与 t 无关（相差不到 2%）", all(abs(rows[t][2] / rows[short][2] - 1) < 0.02 for t in lengths), "词元总数变了")
    # softmax 的反向只用它的输出，填 -inf、除以 √k 都不用留：所以每层只记下一份 (b, h, t, t)。
    each = tokens * long * args.heads * 4 * cfg["n_layers"]
    copies = rows[long][1] / each
    confirm(f"t² 的部分正好是每层一份注意力权重：b·h·t² 个数，各 4 字节（得到 {copies:.2f} 份）", copies == 1, "打开了 dropout，它还要记下掩码和结果")


if __name__ == "__main__":
    main()
