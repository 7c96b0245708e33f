"""第 2 章 · 实验　max_length 取多大？

问题：　每步看的词元一样多（b·t 不变），样本从 60 个词元加长到 960 个，一步训练会慢多少、多占多少内存？
先猜：　词元一样多，矩阵乘法就一样多，是不是差不多？（先想 10 秒，再运行）
看点：　① 左图：每个词元的用时，几轮的散布；② 右图：前向为反向留住的内存，多出来的每一个字节都是注意力权重（t² 从哪里来，
        见 ch03/experiments/exp_attention_complexity.py）；③ 花了这些换到什么：每道题平均看得到的前文，正好是样本长度的一半。
动手改：1. --heads 8：权重表多了一倍，右图里多出来的也多一倍；最短的那一档几乎不变。
        2. --dim 512：别的部分大了三四倍，加长的代价就显得小了。模型越宽，越禁得起长的样本。
        3. 把 cfg 里的 drop_rate 改成 0.1：dropout 又要留下自己的掩码和结果，最后一条自查变成 ✗。

运行：
    python ch02/experiments/exp_sequence_length.py            # 图片写到 ch02/outputs/
    python ch02/experiments/exp_sequence_length.py --heads 8
    约 10 秒，0.7 GB（2 核 CPU）

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　k 每个头的维度　V 词表大小
"""

import argparse
import statistics
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
LENGTHS = (60, 120, 240, 480, 960)
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


# region 沿用 ch03/experiments/exp_attention_complexity.py: take_turns, quartiles, compare
def take_turns(works, rounds, device=None):
    """轮流计时：每一轮把几份各做一遍，电脑忽快忽慢时大家一起快慢，比较才公平。（详解见 ch03/experiments/exp_attention_complexity.py）"""
    on_gpu, times = device is not None and device.type != "cpu", {name: [] for name in works}
    clock = time.perf_counter if on_gpu or torch.get_num_threads() > 1 else time.process_time
    for turn in range(rounds + 1):
        for name, work in works.items():
            start = clock()
            work()
            if on_gpu:
                torch.get_device_module(device).synchronize()
            if turn:
                times[name].append(clock() - start)
    return times


def quartiles(values):
    """量了许多次，中间一半落在哪里。只报一个平均，看不出机器忙不忙。（详解见 ch03/experiments/exp_attention_complexity.py）"""
    return tuple(statistics.quantiles(values, n=4, method="inclusive"))


def compare(values, reference):
    """甲是乙的几倍；两边中间的一半重叠了，就说分不出。（详解见 ch03/experiments/exp_attention_complexity.py）"""
    (low, middle, high), (floor, center, ceiling) = quartiles(values), quartiles(reference)
    ratio = f"{middle / center:.2f} 倍"
    return ratio if high < floor or low > ceiling else f"分不出（中位数是 {ratio}）"


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


def saved_bytes(model, ids):
    """前向传播为反向传播留住了多少字节；训练比推理费内存，主要就在这里。

    参数:
        model (nn.Module): 语言模型
        ids (Tensor): 词元编号，(b, t + 1)

    返回:
        int: 字节数，参数不算
    """
    parameters = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    seen = {}

    def pack(tensor):
        # 同一块内存可能被留几次（例如转置前后），按内存的地址去重；留着张量，地址才不会被别人重用。
        seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        train_step(model, ids)
    return sum(tensor.untyped_storage().nbytes() for pointer, tensor in seen.items() if pointer not in parameters)


def draw(times, memory, tokens, path):
    """画图：左边每个词元的用时，右边留住的内存。

    参数:
        times (dict): 长度 → 每一轮每个词元几微秒
        memory (dict): 长度 → 字节数
        tokens (int): 每步几个词元
        path (Path): 图片写到哪里
    """
    labels = [str(t) for t in times]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
    low, middle, high = ([quartiles(values)[i] for values in times.values()] for i in range(3))
    left.plot(labels, middle, "o-")
    left.fill_between(labels, low, high, alpha=0.25)
    left.set(ylim=(0, None), xlabel="序列长度 t", ylabel="微秒", title="每个词元的用时（前向 + 反向；色带：四分位）")
    shortest = memory[min(memory)] / 1e6
    right.bar(labels, [shortest] * len(labels), label="与最短的一样多的", color="#9ecae1")
    right.bar(labels, [size / 1e6 - shortest for size in memory.values()], bottom=shortest, label="多出来的：注意力权重", color="#fdae6b")
    right.set(xlabel="序列长度 t", ylabel="MB", title=f"留住的内存（每步都是 {tokens} 个词元）")
    right.legend(fontsize=9)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    """词元总数不变，只改切法，量时间和内存。"""
    parser = argparse.ArgumentParser(description="实验　序列长度的代价")
    parser.add_argument("--dim", type=int, default=128, help="嵌入维度 d，要能被头数整除（默认：128）")
    parser.add_argument("--heads", type=int, default=4, help="头数（默认：4）")
    parser.add_argument("--quick", action="store_true", help="只到 480，词元减半，少量几轮")
    args = parser.parse_args()
    if not 1 <= args.dim <= 1024 or args.heads < 1:
        parser.error(f"--dim 应在 1 到 1024 之间，--heads 至少是 1，不能是 {args.dim} 和 {args.heads}")
    lengths, tokens, rounds = (LENGTHS[:-1], 960, 5) if args.quick else (LENGTHS, 1920, 9)  # tokens 是每步的词元总数 b·t，一直不变：变的只是切成几个样本

    torch.set_num_threads(1)  # 只用一个线程，take_turns 就能看 CPU 时间，不怕别的程序打扰
    cfg = {"vocab_size": VOCAB_SIZE, "context_length": max(lengths), "drop_rate": 0.0, "qkv_bias": False}
    cfg |= {"emb_dim": args.dim, "n_heads": args.heads, "n_layers": 2}
    torch.manual_seed(123)
    try:
        model = GPTModel(cfg)
    except ValueError as error:
        parser.error(str(error))
    print(f"每步 {tokens} 个词元，2 层，d = {args.dim}，{args.heads} 个头；轮流量 {rounds} 轮", flush=True)
    ids = torch.randint(0, VOCAB_SIZE, (tokens + 1,))  # (b·t + 1,)
    batches = {t: cut(ids, t) for t in lengths}
    turns = take_turns({t: lambda batch=batch: train_step(model, batch) for t, batch in batches.items()}, rounds)
    times = {t: [seconds / tokens * 1e6 for seconds in values] for t, values in turns.items()}
    memory = {t: saved_bytes(model, batch) for t, batch in batches.items()}
    for t in lengths:
        low, middle, high = quartiles(times[t])
        print(f"  t = {t:4}　b = {tokens // t:2}　每个词元 {middle:5.1f} 微秒（四分位 {low:.1f}–{high:.1f}）　留住 {memory[t] / 1e6:5.1f} MB　每道题平均看得到 {(t + 1) / 2:.1f} 个词元")
    draw(times, memory, tokens, OUTPUTS / "sequence_length.png")
    print(f"图已写到 {OUTPUTS / 'sequence_length.png'}")

    short, long = lengths[0], lengths[-1]
    print(f"\n所以：词元一样多，样本从 {short} 加长到 {long}，每个词元的用时变成 {compare(times[long], times[short])}，留住的内存变成 {memory[long] / memory[short]:.1f} 倍；")
    same = [t for t in lengths[1:] if quartiles(times[t])[0] <= quartiles(times[short])[2]]
    print(f"　　　加长到 {max(same)}，用时还与 {short} 的分不出。" if same else f"　　　哪一档的用时都比 {short} 的长。", end="")
    print(f"换到的是：每道题平均看得到的词元，从 {(short + 1) / 2:.1f} 个变成 {(long + 1) / 2:.1f} 个。GPT-2 取 1024。")

    print("\n这个数字对吗？")
    per_row = statistics.mean((t + 1) / 2 for t in [short])
    counted = statistics.mean(i + 1 for i in range(short))  # 第 i 个位置（从 0 数）看得到 i + 1 个
    confirm(f"长 {short} 的样本，每道题平均看得到 (t + 1) / 2 = {per_row} 个", per_row == counted, "目标数错了一个")
    # softmax 的反向只用它的输出，填 -inf、除以 √k 都不用留：每层只留一份 (b, h, t, t)，共 4·b·h·t² 字节。
    extra = {t: 4 * cfg["n_layers"] * args.heads * tokens * (t - short) for t in lengths}
    worst = max(abs(memory[t] - memory[short] - extra[t]) for t in lengths)
    confirm(f"多出来的就是每层一份 (b, h, t, t) 的权重（最多差 {worst:,} 字节，应不到 1%）", worst < 0.01 * memory[short], "打开了 dropout，它还要留下掩码和结果")


if __name__ == "__main__":
    main()
