"""第 5 章 · 实验　梯度累积：内存装不下的一大批，拆开来算，还一样吗？

问题：　一批拆成几小批（micro-batch），梯度攒起来再更新一次，与一整批真的一样吗？省多少内存？
先猜：　最常见的写法，是每小批的损失各自求平均，再除以小批的个数。句子有长有短、提示词屏蔽成 −100 的时候，梯度差几成？（先想 10 秒，再运行）
看点：　① 等长、不屏蔽：怎么写都一样，所以这个错很难发现；② 有长有短：按词元加权的差不到百万分之一，平均的平均差出百分之几十；
        ③ 中图：平均的平均给每个词元的分量，短句里的是长句里的好几倍；④ 右图：内存大半是 logits，拆得越细越省；剩下的是梯度和优化器，拆不掉。
动手改：1. 把 accumulate 里的 model.zero_grad() 去掉：上一批的梯度混进这一批，自查的第一条变成 ✗。
        2. 把 WEIGHTS 里「按词元」的 1 / total 改成 1 / parts：损失的和只除以小批的个数，差几百倍，自查变成 ✗。
        3. 把 build 里的 "drop_rate": 0.0 改成 "drop_rate": 0.1：拆开之后抽到的随机数不同，怎么加权也不相同了，自查变成 ✗。

运行：
    python ch05/experiments/exp_gradient_accumulation.py               # 图片写到 ch05/outputs/
    python ch05/experiments/exp_gradient_accumulation.py --quick
    约 110 秒，2 GB（2 核 CPU）

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　k 每个头的维度　V 词表大小
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"

# 改这里
BATCH, SIZES = 16, [16, 8, 4, 2, 1]  # 一批几句；每小批几句
WEIGHTS = {  # 名字 → 小批里损失的和乘几：own 这小批有几个要学的词元，total 整批有几个，parts 拆成几小批
    "按词元": lambda own, total, parts: 1 / total,
    "平均的平均": lambda own, total, parts: 1 / own / parts,  # 最常见的错：每小批先求平均，再除以小批的个数
}
MEMORY = {"vocab_size": 50257, "context_length": 256, "emb_dim": 192, "n_heads": 6, "n_layers": 4, "drop_rate": 0.1, "qkv_bias": False}  # 量内存用 mini
ROUNDS = 3  # 内存量几遍


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


def loss_sum(model, inputs, targets):
    """一小批里，要学的词元的损失之和：先不平均，除以几由外面定。

    参数:
        model (nn.Module): 语言模型，(b, t) → (b, t, V)
        inputs, targets (Tensor): 输入和目标，(b, t)；目标是 −100 的位置不学

    返回:
        Tensor: 一个数，带着计算图
    """
    return nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")


def accumulate(model, inputs, targets, size, weight):
    """一批拆成每份 size 句，一份一份地反向，梯度攒在 .grad 里；更新由外面做，一批只做一次。

    参数:
        model (nn.Module): 语言模型
        inputs, targets (Tensor): 一批，(b, t)；目标是 −100 的位置不学
        size (int): 每小批几句
        weight (callable): WEIGHTS 里的一个

    返回:
        float: 攒起来的损失

    异常:
        ValueError: 整批没有一个要学的词元
    """
    # 整批有几个要学的词元，要在第一次 backward 之前数好：攒的时候才知道该除以几。
    total = (targets != -100).sum().item()
    if total == 0:
        raise ValueError("这一批的目标全是 −100，没有要学的词元")
    parts, loss = list(zip(inputs.split(size), targets.split(size))), 0.0
    model.zero_grad()  # 一批清一次，不是一小批清一次
    for some_inputs, some_targets in parts:
        own = (some_targets != -100).sum().item()
        if own == 0:  # 全是提示词的一小批：没有要学的。各自求平均的写法，这里是 0 ÷ 0，整个梯度都成了 nan
            continue
        scaled = loss_sum(model, some_inputs, some_targets) * weight(own, total, len(parts))
        scaled.backward()  # 这一小批的激活值到这里就放掉了，省的正是它；梯度加到 .grad 上
        loss += scaled.item()
    return loss


def gradient(model):
    """全部梯度接成一个长向量。

    参数:
        model (nn.Module): 已经 backward 过的模型

    返回:
        Tensor: (n,)，n 是参数个数
    """
    return torch.cat([p.grad.flatten() for p in model.parameters()])  # (n,)


def gap(ours, wanted):
    """两个向量差多少：差的长度，除以该有的长度。

    参数:
        ours, wanted (Tensor): 都是 (n,)

    返回:
        float: 相对的差；0.1 就是差一成
    """
    return ((ours - wanted).norm() / wanted.norm()).item()


def sentences(path):
    """文章切成句子，每句的前三分之一当提示词。

    参数:
        path (Path): 文本文件

    返回:
        list[tuple[list, int]]: 每项是一句的字节，和其中提示词有几个

    异常:
        ValueError: 不到 40 句
    """
    found = [list(each.encode())[:240] for each in re.split(r"(?<=[.!?。！？])\s*", read_text(path)) if len(each) >= 12]
    if len(found) < 40:
        raise ValueError(f"{path} 只切得出 {len(found)} 句，至少要 40 句，请换长一点的文本")
    return [(ids, len(ids) // 3) for ids in found]


def collate(rows, ragged=True):
    """几句凑成一批：短的填 0，提示词和填充的目标都是 −100。

    参数:
        rows (list): sentences 的几项
        ragged (bool): False 时都截成最短的那么长，也不屏蔽

    返回:
        tuple[Tensor, Tensor]: 输入和目标，都是 (b, t)
    """
    longest = (max if ragged else min)(len(ids) for ids, _ in rows)
    window = torch.tensor([(ids + [0] * longest)[:longest] for ids, _ in rows])  # (b, t + 1)
    targets = window[:, 1:].clone()  # (b, t)
    for row, (ids, prompt) in enumerate(rows if ragged else []):
        targets[row, : prompt - 1], targets[row, len(ids) - 1 :] = -100, -100  # 目标比输入早一个，所以是 prompt − 1
    return window[:, :-1], targets  # (b, t) 和 (b, t)


def build(seed, dtype=torch.float32):
    """比较梯度用的小模型，词元就是字节。

    参数:
        seed (int): 初始权重
        dtype (torch.dtype): 精度

    返回:
        GPTModel: 模型
    """
    torch.manual_seed(seed)
    return GPTModel({"vocab_size": 256, "context_length": 256, "emb_dim": 64, "n_heads": 4, "n_layers": 2, "drop_rate": 0.0, "qkv_bias": False}).to(dtype)


def peak_memory():
    """这个进程到现在为止，内存最多占过多少。

    返回:
        float 或 None: MB；Windows 上量不了
    """
    if (status := Path("/proc/self/status")).is_file():  # Linux。ru_maxrss 在这里不准：它从父进程的起算
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text(encoding="utf-8"))[1]) / 2**10
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Mac 的单位是字节


def fresh(*arguments):
    """在新的进程里运行这个脚本：峰值只升不降，同一个进程里量第二次，看到的还是第一次的。

    参数:
        arguments (tuple): 命令行参数

    返回:
        dict: 它印出的 JSON

    异常:
        OSError: 那个进程出了错，多半是内存不够
    """
    command = [sys.executable, str(Path(__file__).resolve()), *map(str, arguments)]
    kept = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")  # setup/run.sh 设的：让分配器别还内存，峰值就量不准了
    clean = {name: value for name, value in os.environ.items() if name not in kept}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=clean | {"PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"})
    if done.returncode != 0:
        raise OSError(f"量内存的进程中途停了（退出码 {done.returncode}），多半是内存不够：关掉别的程序，或加 --quick")
    return json.loads(done.stdout.splitlines()[-1])


def measure(size, quick):
    """在这个进程里走一步：8 句、每句 256 个词元，每小批 size 句。

    参数:
        size (int): 每小批几句
        quick (bool): True 时模型和批都小

    返回:
        dict: rise（这一步让峰值升了多少 MB）、loss
    """
    torch.set_num_threads(1)
    config = MEMORY | ({"emb_dim": 32, "n_layers": 1, "n_heads": 2} if quick else {})
    torch.manual_seed(123)
    model, t = GPTModel(config), 32 if quick else 256
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    window = torch.randint(config["vocab_size"], (8, t + 1))  # (b, t + 1)
    before = peak_memory()
    loss = accumulate(model, window[:, :-1], window[:, 1:], size, WEIGHTS["按词元"])
    optimizer.step()
    return {"rise": before and peak_memory() - before, "loss": loss}


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


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def compare(rows, batches, seed):
    """一批一批地比：拆成几种大小、两种加权，与一整批的梯度差多少。

    参数:
        rows (list): sentences 的结果
        batches (int): 比几批
        seed (int): 抽哪些句子、初始权重

    返回:
        dict: （有长有短吗，怎么加权，每小批几句）→ 每批一个相对的差
    """
    generator, gaps = torch.Generator().manual_seed(seed), {}
    for number in range(batches):
        chosen = [rows[i] for i in torch.randperm(len(rows), generator=generator)[:BATCH]]
        for ragged in (False, True):
            model, batch = build(seed + number), collate(chosen, ragged)
            loss = loss_sum(model, *batch) / (batch[1] != -100).sum()  # 该有的：一整批一起算，除以词元数
            loss.backward()
            wanted = gradient(model)
            for name, weight in WEIGHTS.items():
                for size in SIZES:
                    accumulate(model, *batch, size, weight)
                    gaps.setdefault((ragged, name, size), []).append(gap(gradient(model), wanted))
    return gaps


def shares(targets, size, weight):
    """每句里的一个词元，占多大的分量。

    参数:
        targets (Tensor): 目标，(b, t)
        size (int): 每小批几句
        weight (callable): WEIGHTS 里的一个

    返回:
        list[tuple[int, float]]: 每句有几个要学的词元；它的每个词元乘的数，除以一整批时的
    """
    lengths = (targets != -100).sum(dim=1)  # (b,)
    total, parts = lengths.sum().item(), lengths.split(size)
    return [(length, weight(part.sum().item(), total, len(parts)) * total) for part in parts for length in part.tolist()]


def draw(gaps, targets, rises, path):
    """左图：梯度差多少；中图：每个词元的分量；右图：内存。

    参数:
        gaps (dict): compare 的结果
        targets (Tensor): 一批的目标，(b, t)
        rises (dict): 每小批几句 → 几次的峰值
        path (Path): 图片写到哪里
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.9), layout="constrained")
    for (name, weight), color in zip(WEIGHTS.items(), ["tab:blue", "tab:red"]):
        for ragged, line in ((True, "-"), (False, ":")):
            middles = [statistics.median(gaps[ragged, name, size]) for size in SIZES[1:]]  # 不拆的差是 0，对数轴上画不出
            left.plot(range(len(SIZES) - 1), middles, "o" + line, color=color, label=f"{name}，{'有长有短' if ragged else '等长，不屏蔽'}")
        middle.scatter(*zip(*shares(targets, 1, weight)), s=22, color=color, label=name)
    left.set_xticks(range(len(SIZES) - 1), SIZES[1:])
    left.set_yscale("log")
    left.set_xlabel(f"每小批几句（一批 {BATCH} 句）")
    left.set_ylabel("梯度与一整批的相对差")
    left.set_title("梯度差多少")
    left.legend(fontsize=8)
    middle.set_xlabel("这一句有几个要学的词元")
    middle.set_ylabel("每个词元的分量（应当都是 1）")
    middle.set_title("每小批 1 句时，谁的分量重")
    middle.legend(fontsize=8)
    for place, values in enumerate(rises.values()):
        right.bar(place, statistics.median(values), color="tab:green", alpha=0.6)
        right.scatter([place] * len(values), values, color="black", s=10, zorder=3)
    right.set_xticks(range(len(rises)), rises)
    right.set_xlabel("每小批几句（一批 8 句 × 256 个词元）")
    right.set_ylabel("一步里内存升了多少（MB）")
    right.set_title("mini 走一步的内存")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def run(args):
    """比梯度，量内存，画图，自查。

    参数:
        args (argparse.Namespace): 命令行参数，见 main
    """
    path = args.text or find_data("the-verdict.txt", "story-en.txt")
    rows = sentences(path)
    print(f"文本　{path}：{len(rows)} 句，长 {min(len(ids) for ids, _ in rows)} 到 {max(len(ids) for ids, _ in rows)} 个字节，前三分之一当提示词，不学", flush=True)
    gaps = compare(rows, 1 if args.quick else 6, args.seed)
    print("\n① 梯度与一整批的相对差（几批的中位数）\n　每小批" + "".join(f"{size:>9} 句" for size in SIZES))
    for ragged in (False, True):
        for name in WEIGHTS:
            print("　　　　" + "".join(f"{statistics.median(gaps[ragged, name, size]):>11.1e}" for size in SIZES) + f"　{'有长有短' if ragged else '等长，不屏蔽'}，{name}")

    batch = collate(rows[:BATCH])
    weights = dict(shares(batch[1], 1, WEIGHTS["平均的平均"]))
    short, long = min(weights), max(weights)
    worst = statistics.median(gaps[True, "平均的平均", 1])
    print(f"\n② 平均的平均，每小批 1 句：梯度差 {worst:.0%}。最短的一句 {short} 个词元，每个的分量是 {weights[short]:.2f}；最长的 {long} 个，是 {weights[long]:.2f}，差 {weights[short] / weights[long]:.1f} 倍")

    sizes = [8, 1] if args.quick else [8, 4, 2, 1]
    measured = {size: [] for size in sizes}
    for _ in range(1 if args.quick else ROUNDS):  # 轮流量：别的程序来抢内存、抢时间，几种都赶上
        for size in sizes:
            measured[size].append(fresh("--measure", size, *["--quick"] * args.quick))
    rises = {size: [one["rise"] for one in each] for size, each in measured.items() if each[0]["rise"] is not None}
    logits = 8 * (32 if args.quick else 256) * MEMORY["vocab_size"] * 4 / 2**20
    print(f"\n③ mini 走一步，8 句，内存的峰值升了多少（新的进程，各量 {len(measured[8])} 次）；整批的 logits 一份就是 {logits:.0f} MB")
    for size, values in rises.items():
        print(f"　每小批 {size} 句　{statistics.median(values):7.0f} MB　（{min(values):.0f} 到 {max(values):.0f}）　logits 一份 {logits * size / 8:.0f} MB")
    picture = OUTPUTS / f"gradient_accumulation{'_quick' * args.quick}.png"
    draw(gaps, batch[1], rises, picture)
    print(f"图片已写到 {picture}" + ("\n只比了一批，量了一次，模型也小：看流程，不下结论" if args.quick else ""))

    print("\n这个数字对吗？")
    double = build(args.seed, torch.float64)
    (loss_sum(double, *batch) / (batch[1] != -100).sum()).backward()
    wanted, exact = gradient(double), []
    for size in SIZES:
        accumulate(double, *batch, size, WEIGHTS["按词元"])
        exact.append(gap(gradient(double), wanted))
    confirm(f"按词元：双精度下与一整批只差舍入（{max(exact):.0e}）", max(exact) < 1e-10, "没有清梯度，数错了词元，有 dropout，或最后一小批句数不同")
    single = max(max(gaps[ragged, "按词元", size]) for ragged in (False, True) for size in SIZES)
    confirm(f"单精度下差不到百万分之一（最多 {single:.0e}）", single < 1e-6, "同上")
    equal = max(max(gaps[False, "平均的平均", size]) for size in SIZES)
    confirm(f"等长、不屏蔽，平均的平均也对（最多差 {equal:.0e}）", equal < 1e-6, "小批的大小不同")
    confirm(f"有长有短，平均的平均就错了（每小批 1 句差 {worst:.0%}）", worst > 0.01, "句子其实一样长")
    total = sum(length * share for length, share in shares(batch[1], 1, WEIGHTS["平均的平均"])) / (batch[1] != -100).sum().item()
    confirm(f"分量加起来没有变，只是偏了（平均 {total:.3f}）", abs(total - 1) < 1e-6, "除的不是小批的个数")
    losses = [one["loss"] for each in measured.values() for one in each]
    confirm("几种拆法的损失相同（有 dropout，允许差 1%）", max(losses) - min(losses) < 0.01 * max(losses), "拆的时候丢了句子")


def main():
    """梯度累积与一整批比：梯度、分量、内存。"""
    parser = argparse.ArgumentParser(description="实验　梯度累积与一整批一样吗")
    parser.add_argument("--text", type=Path, help="文本（默认：the-verdict.txt，没有就用自带的 story-en.txt）")
    parser.add_argument("--seed", type=int, default=123, help="抽哪些句子、初始权重（默认：123）")
    parser.add_argument("--quick", action="store_true", help="只比一批，内存用小模型量：看流程，不下结论")
    parser.add_argument("--measure", type=int, choices=[8, 4, 2, 1], help=argparse.SUPPRESS)  # 给 fresh 用：只走一步，印出内存
    args = parser.parse_args()
    if not 0 <= args.seed < 2**50:
        parser.error(f"--seed 应在 0 到 {2**50} 之间，不能是 {args.seed}")
    torch.set_num_threads(1)
    try:
        print(json.dumps(measure(args.measure, args.quick))) if args.measure else run(args)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
