"""第 4 章 · 实验　换一种归一化、换一个位置、换一个激活函数，会怎样？

问题：　归一化从前面挪到后面，或者干脆不要；LayerNorm 换成 RMSNorm，GELU 换成 ReLU 或 SwiGLU：验证损失差多少？
先猜：　哪一样换了会真的不同，哪几样其实差不多？（先想 10 秒，再运行）
看点：　① 归一化让深的模型不挑初始权重：都放大到 2 倍，不归一化的一开始就错得没有边；
        ② 左图：叠到 24 层，后置的（2017 年的原始写法）学不动，损失停在"只数每个字符有多少"的地方；
        ③ 中图、右图：每一种都与第一种配对相减，看区间：跨过 0 的，就是这个实验分不出的。参数几乎一样多（SwiGLU 有三个矩阵，所以中间只升到 8/3 倍）。
动手改：1. --layers 12：浅一半，不归一化的与第一种就分不出了：归一化为的是叠得深。
        2. 把 train 里的 lr=5e-3 改成 lr=5e-4，再用 --layers 12 运行：后置的也学得动了；所以最初的 Transformer（后置）离不开学习率预热。
        3. 把 RMSNorm 里的 x.pow(2).mean(dim=-1, keepdim=True) 换成 x.var(dim=-1, keepdim=True)：减不减均值，训练出来几乎一样，
           这正是 RMSNorm 敢省掉它的原因（自查会有一条 ✗）。

运行：
    python ch04/experiments/exp_norms_and_activations.py            # 图片写到 ch04/outputs/
    python ch04/experiments/exp_norms_and_activations.py --quick
    约 160 秒，0.8 GB（2 核 CPU）；训练过的存着，再运行就立刻出结果

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　k 每个头的维度　V 词表大小（这里词元就是字符）
"""

import argparse
import hashlib
import json
import math
import os
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"

# 改这里：每一种都从第一种改一样东西：归一化、它的位置、激活函数。
RECIPES = {
    "LayerNorm pre GELU": {"norm": "LayerNorm", "place": "pre", "activation": "GELU"},
    "不归一化": {"norm": "none", "place": "pre", "activation": "GELU"},
    "post（后置）": {"norm": "LayerNorm", "place": "post", "activation": "GELU"},
    "RMSNorm": {"norm": "RMSNorm", "place": "pre", "activation": "GELU"},
    "ReLU": {"norm": "LayerNorm", "place": "pre", "activation": "ReLU"},
    "SwiGLU": {"norm": "LayerNorm", "place": "pre", "activation": "SwiGLU"},
}
BASE = "LayerNorm pre GELU"
DEEP = [BASE, "不归一化", "post（后置）"]  # 归一化为的是叠得深：在 24 层、d = 32 的窄模型上比
SHALLOW = [BASE, "RMSNorm", "ReLU", "SwiGLU"]  # 这几样不靠深度：2 层、d = 64
T = 16  # 上下文长度
WHEN = ["走到四分之一时", "最低的"]  # 学得快不快，最后低不低：两个问题


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


# region 沿用 ch04/main: LayerNorm, GELU
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


# endregion


class RMSNorm(nn.Module):
    """均方根归一化：x ÷ √mean(x²) × scale。不减均值，也没有 shift，少算一半；Llama、Qwen 都用它。

    参数:
        emb_dim (int): 嵌入维度 d

    形状:
        输入 (b, t, d) → 输出 (b, t, d)

    出处: Zhang、Sennrich，Root Mean Square Layer Normalization，2019
    """

    def __init__(self, emb_dim):
        super().__init__()
        self.eps = 1e-5
        self.scale = nn.Parameter(torch.ones(emb_dim))

    def forward(self, x):
        """前向传播。

        参数:
            x (Tensor): (b, t, d)

        返回:
            Tensor: (b, t, d)
        """
        return self.scale * x / torch.sqrt(x.pow(2).mean(dim=-1, keepdim=True) + self.eps)


class SwiGLU(nn.Module):
    """带门的前馈网络：一个矩阵算内容，一个矩阵算门，逐个相乘，再由第三个矩阵降回来。

    门 silu(x) = x · sigmoid(x)，由输入自己决定每一维放行多少。三个矩阵，所以中间宽度取 8d/3，参数才与 4d 的两个矩阵一样多。

    参数:
        emb_dim (int): 嵌入维度 d

    形状:
        输入 (b, t, d) → 输出 (b, t, d)

    出处: Shazeer，GLU Variants Improve Transformer，2020
    """

    def __init__(self, emb_dim):
        super().__init__()
        hidden = round(8 * emb_dim / 3)
        self.fc1 = nn.Linear(emb_dim, hidden)
        self.fc2 = nn.Linear(emb_dim, hidden)
        self.fc3 = nn.Linear(hidden, emb_dim)

    def forward(self, x):
        """前向传播。

        参数:
            x (Tensor): (b, t, d)

        返回:
            Tensor: (b, t, d)
        """
        return self.fc3(nn.functional.silu(self.fc1(x)) * self.fc2(x))


def make_norm(cfg):
    """按配置建一个归一化。

    参数:
        cfg (dict): 模型配置，用到 norm 和 emb_dim

    返回:
        nn.Module: LayerNorm、RMSNorm，或什么也不做
    """
    return {"LayerNorm": LayerNorm, "RMSNorm": RMSNorm, "none": lambda _: nn.Identity()}[cfg["norm"]](cfg["emb_dim"])


# region 改写 ch04/main: FeedForward, TransformerBlock, GPTModel
class FeedForward(nn.Module):
    """前馈网络，激活函数可选。（原版详解见 ch04/main/example_03_feedforward.py）"""

    def __init__(self, cfg):
        super().__init__()
        if cfg["activation"] == "SwiGLU":  # 改：SwiGLU 结构不同，单独一个类
            self.layers = SwiGLU(cfg["emb_dim"])
            return
        self.layers = nn.Sequential(
            nn.Linear(cfg["emb_dim"], 4 * cfg["emb_dim"]),
            nn.ReLU() if cfg["activation"] == "ReLU" else GELU(),  # 改：原来总是 GELU
            nn.Linear(4 * cfg["emb_dim"], cfg["emb_dim"]),
        )

    def forward(self, x):
        return self.layers(x)


class TransformerBlock(nn.Module):
    """Transformer 块，归一化的种类和位置可选。（原版详解见 ch04/main/example_05_transformer_block.py）"""

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
        self.place = cfg["place"]  # 改：pre 在每一层之前，post 在加完残差之后
        self.norm1 = make_norm(cfg)  # 改：原来是 LayerNorm
        self.norm2 = make_norm(cfg)  # 改：同上
        self.drop_shortcut = nn.Dropout(cfg["drop_rate"])

    def forward(self, x):
        if self.place == "post":  # 改：2017 年的原始写法：归一化压在残差这条主路上，梯度每过一层都要穿过它
            x = self.norm1(x + self.drop_shortcut(self.att(x)))  # (b, t, d)
            return self.norm2(x + self.drop_shortcut(self.ff(x)))  # (b, t, d)
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
    """GPT，最后的归一化跟着配置走。（原版详解见 ch04/main/example_06_gpt_model.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.Sequential(*[TransformerBlock(cfg) for _ in range(cfg["n_layers"])])
        # 改：post 的最后一步已经是归一化，不用再来一次
        self.final_norm = nn.Identity() if cfg["place"] == "post" else make_norm(cfg)
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


# region 沿用 ch04/experiments/exp_seed_noise.py: encode_characters, bigram_loss, validation_loss, train, milestones, side_by_side, paired_interval, verdict, draw_differences
def encode_characters(text):
    """按字符编号，前九成作训练集，后一成作验证集。（详解见 ch04/experiments/exp_seed_noise.py）"""
    chars = sorted(set(text))
    number = {char: i for i, char in enumerate(chars)}
    ids = torch.tensor([number[char] for char in text])
    return ids[: len(ids) * 9 // 10], ids[len(ids) * 9 // 10 :], chars


def bigram_loss(train_ids, val_ids, vocab_size):
    """只看前一个字符、靠数数猜下一个，验证损失是多少：不比它低，就什么上下文也没有学到。（详解见 ch04/experiments/exp_seed_noise.py）"""
    pairs = train_ids[:-1] * vocab_size + train_ids[1:]
    counts = torch.bincount(pairs, minlength=vocab_size**2).view(vocab_size, vocab_size) + 0.1  # (V, V)
    probs = counts / counts.sum(dim=1, keepdim=True)
    return -probs[val_ids[:-1], val_ids[1:]].log().mean().item()


def validation_loss(model, ids, context_length):
    """整个验证集的平均损失：首尾相接地切成若干段，一批算完。（详解见 ch04/experiments/exp_seed_noise.py）"""
    model.eval()
    n = (len(ids) - 1) // context_length * context_length
    inputs, targets = ids[:n].view(-1, context_length), ids[1 : n + 1]  # (b, t)，(b·t,)
    with torch.no_grad():
        return nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets).item()


def train(model, train_ids, val_ids, context_length, steps, seed, extra_loss=None):
    """训练一个小模型，记下验证损失的曲线。（详解见 ch04/experiments/exp_seed_noise.py）"""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.1)
    curve = [(0, validation_loss(model, val_ids, context_length))]
    for step in range(1, steps + 1):
        model.train()
        starts = torch.randint(len(train_ids) - context_length, (16, 1), generator=generator)  # (b, 1)
        window = train_ids[starts + torch.arange(context_length + 1)]  # (b, t + 1)
        loss = nn.functional.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        if extra_loss is not None:
            loss = loss + extra_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % max(1, steps // 20) == 0 or step == steps:
            curve.append((step, validation_loss(model, val_ids, context_length)))
    return curve


def milestones(curve):
    """一条曲线，两个问题：学得快不快，最后低不低。（详解见 ch04/experiments/exp_seed_noise.py）"""
    return curve[len(curve) // 4][1], min(loss for _, loss in curve)


def side_by_side(job, cases, folder, workers=None):
    """每个 case 运行一次 job(*case)，几个进程并排，做完一个存一个；存过的直接读。（详解见 ch04/experiments/exp_seed_noise.py）"""
    source = Path(job.__globals__["__file__"]).read_bytes()
    paths = {case: folder / f"{hashlib.sha256(source + repr(case).encode()).hexdigest()[:16]}.json" for case in cases}
    todo = [case for case in paths if not paths[case].is_file()]
    folder.mkdir(parents=True, exist_ok=True)

    def save(case, result):
        part = paths[case].with_suffix(".part")
        part.write_text(json.dumps(result), encoding="utf-8")
        os.replace(part, paths[case])
    workers = min(workers or os.cpu_count(), len(todo))
    progress = tqdm(total=len(todo), desc="训练", unit="个", leave=False, disable=None if todo else True)
    if workers <= 1:
        torch.set_num_threads(1)
        for case in todo:
            save(case, job(*case))
            progress.update()
    else:
        with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            running = {pool.submit(job, *case): case for case in todo}
            try:
                for future in as_completed(running):
                    save(running[future], future.result())
                    progress.update()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    progress.close()
    return {case: json.loads(path.read_text(encoding="utf-8")) for case, path in paths.items()}


def paired_interval(differences):
    """几个种子的差，平均是多少，真正的平均差有 99% 的把握落在哪里。（详解见 ch04/experiments/exp_seed_noise.py）"""
    t99 = {5: 4.604, 6: 4.032, 7: 3.707, 8: 3.499, 9: 3.355, 10: 3.250}
    n = len(differences)
    if n not in t99:
        raise ValueError(f"有 {n} 个差，要 5 到 10 个：更少，区间宽得没有用；更多，t99 里要添一项")
    return statistics.mean(differences), t99[n] * statistics.stdev(differences) / math.sqrt(n)


def verdict(differences):
    """损失的差该怎么说：区间整个在 0 的一边才算数，跨过 0 就是分不出。（详解见 ch04/experiments/exp_seed_noise.py）"""
    mean, half = paired_interval(differences)
    return "分不出" if abs(mean) <= half else ("更低" if mean < 0 else "更高")


def draw_differences(axis, differences, quick=False):
    """一行一种变体：每个种子的差是一个点，粗线是 99% 区间，竖线是 0。（详解见 ch04/experiments/exp_seed_noise.py）"""
    for row, values in enumerate(differences.values()):
        axis.scatter(values, [row] * len(values), s=14, color="tab:blue", alpha=0.6, zorder=3)
        if not quick:
            mean, half = paired_interval(values)
            color = "0.5" if abs(mean) <= half else ("tab:green" if mean < 0 else "tab:red")
            axis.plot([mean - half, mean + half], [row, row], linewidth=6, alpha=0.5, color=color, solid_capstyle="butt")
    axis.axvline(0, color="black", linewidth=1)
    axis.set_yticks(range(len(differences)), list(differences))
    axis.set_ylim(len(differences) - 0.5, -0.5)


# endregion


def shape_of(layers, vocab_size):
    """一组模型的大小：深的窄一些，浅的宽一些。

    参数:
        layers (int): 几个 Transformer 块
        vocab_size (int): 词表大小

    返回:
        dict: 配置，还缺 RECIPES 里的三项
    """
    d = 64 if layers <= 2 else 32
    return {"vocab_size": vocab_size, "context_length": T, "emb_dim": d, "n_heads": d // 16, "n_layers": layers, "drop_rate": 0.0, "qkv_bias": False}


def train_once(path, layers, name, steps, seed):
    """训练一次：几层、哪一种由参数定，其余都相同。

    参数:
        path (str): 文本文件
        layers (int): 几个 Transformer 块
        name (str): RECIPES 里的名字
        steps (int): 走几步
        seed (int): 初始权重和批的次序

    返回:
        list: train 的结果
    """
    train_ids, val_ids, chars = encode_characters(read_text(path))
    torch.manual_seed(seed)
    return train(GPTModel(shape_of(layers, len(chars)) | RECIPES[name]), train_ids, val_ids, T, steps, seed)


def start_loss(layers, name, gain, val_ids, vocab_size, seed):
    """还没训练，把块里所有线性层的权重放大几倍，验证损失是多少。

    参数:
        layers (int): 几个 Transformer 块
        name (str): RECIPES 里的名字
        gain (float): 放大几倍
        val_ids (Tensor): 验证集的编号，一维
        vocab_size (int): 词表大小
        seed (int): 初始权重

    返回:
        float: 损失
    """
    torch.manual_seed(seed)
    model = GPTModel(shape_of(layers, vocab_size) | RECIPES[name])
    with torch.no_grad():
        for module in model.trf_blocks.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(gain)
    return validation_loss(model, val_ids, T)


def draw(curves, references, gaps, quick, path):
    """左图：深的曲线；中图、右图：深的、浅的，与第一种配对的差。

    参数:
        curves (dict): 名字 → 深的模型，每个种子一条曲线
        references (dict): 名字 → 一个参照的损失，画成横线
        gaps (list[dict]): 深的、浅的：名字 → 每个种子的差
        quick (bool): True 时不画区间
        path (Path): 图片写到哪里
    """
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained", width_ratios=[1.1, 1, 1])
    for (name, each), color in zip(curves.items(), ("0.3", "tab:orange", "tab:red")):
        for i, curve in enumerate(each):
            axes[0].plot(*zip(*curve[1:]), color=color, linewidth=1, alpha=0.8, label=name if i == 0 else None)
    for (name, loss), style in zip(references.items(), ("--", ":")):
        axes[0].axhline(loss, color="0.5", linestyle=style, label=name)
    axes[0].set_xlabel("训练步数")
    axes[0].set_ylabel("验证损失")
    axes[0].set_title("深的：每个种子一条")
    axes[0].legend(fontsize=8)
    for axis, each, title in zip(axes[1:], gaps, ("深的：归一化", "浅的：种类和激活函数")):
        draw_differences(axis, each, quick)
        axis.set_xlabel(f"损失的差：减去 {BASE}（往左是更低）")
        axis.set_title(title)
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


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def main():
    """深的比归一化，浅的比种类和激活函数；每一种训练几个种子，与第一种配对相减。"""
    parser = argparse.ArgumentParser(description="实验　归一化与激活函数")
    parser.add_argument("--text", help="训练文本，UTF-8 编码（默认：找到的 the-verdict.txt，没有就用自带的英文短篇）")
    parser.add_argument("--layers", type=int, default=24, help="深的模型，几个 Transformer 块（默认：24）")
    parser.add_argument("--steps", type=int, default=200, help="每次训练几步（默认：200）")
    parser.add_argument("--seeds", type=int, default=5, help="几个种子，5 到 10（默认：5）")
    parser.add_argument("--seed", type=int, default=123, help="第一个种子是它乘 1000（默认：123）")
    parser.add_argument("--quick", action="store_true", help="每次只训练 1 步，深的也只有 3 层：看流程，不下结论")
    args = parser.parse_args()
    for name, low, high in [("layers", 1, 48), ("steps", 1, 100000), ("seeds", 5, 10), ("seed", 0, 2**50)]:
        if not low <= getattr(args, name) <= high:
            parser.error(f"--{name} 应在 {low} 到 {high} 之间，不能是 {getattr(args, name)}")
    try:
        path = str(args.text or find_data("the-verdict.txt", "story-en.txt"))
        text = read_text(path)
        if len(text) < 2560:
            raise ValueError(f"{path} 只有 {len(text)} 个字符，至少要 2560 个，请换长一点的文本")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    torch.set_num_threads(1)
    layers, steps, seeds = 3 if args.quick else args.layers, 1 if args.quick else args.steps, [args.seed * 1000 + i for i in range(args.seeds)]
    train_ids, val_ids, chars = encode_characters(text)
    counts = torch.bincount(train_ids, minlength=len(chars)) + 0.1
    unigram = -(counts / counts.sum()).log()[val_ids].mean().item()
    references = {"只看前一个字符，数数": bigram_loss(train_ids, val_ids, len(chars)), "只数每个字符有多少": unigram}
    print(f"文本　{path}（{len(text):,} 个字符，{len(chars)} 种）　参照：" + "，".join(f"{name}，损失 {loss:.3f}" for name, loss in references.items()))

    gains = (1, 1.5, 2, 3)
    print(f"\n{layers} 层，没训练时的损失；块里的初始权重放大　" + "　".join(f"{gain:7} 倍" for gain in gains))
    for name in DEEP:
        losses = [start_loss(layers, name, gain, val_ids, len(chars), seeds[0]) for gain in gains]
        print(f"  {name.ljust(20)}" + "　".join(f"{loss:9.3g}" for loss in losses))

    groups = [(f"深的：{layers} 层", layers, DEEP), ("浅的：2 层", 2, SHALLOW)]
    cases = [(path, depth, name, steps, seed) for _, depth, names in groups for name in names for seed in seeds]
    results = side_by_side(train_once, cases, OUTPUTS / "exp_norms_and_activations", workers=1 if args.quick else None)
    gaps, params = [], {}
    for title, depth, names in groups:
        shape = shape_of(depth, len(chars))
        ends = {name: [milestones(results[path, depth, name, steps, seed]) for seed in seeds] for name in names}
        sizes = {name: sum(p.numel() for p in GPTModel(shape | RECIPES[name]).parameters()) for name in names}
        params[title] = max(sizes.values()) / min(sizes.values()) - 1
        print(f"\n{title}，d = {shape['emb_dim']}，上下文 {T}，{steps} 步，{len(seeds)} 个种子　与 {BASE} 配对相减，99% 区间" + ("　训练太短：看流程，不下结论" if args.quick else ""))
        gaps.append({})
        for name in names:
            line = f"  {name.ljust(20)}参数 {sizes[name]:8,}　最低的损失 {statistics.mean(low for _, low in ends[name]):.3f}"
            for which, when in enumerate(WHEN if name != BASE else []):
                differences = [mine[which] - base[which] for mine, base in zip(ends[name], ends[BASE])]
                mean, half = paired_interval(differences)
                line += f"　{when} {mean:+.3f} ± {half:.3f}" + ("" if args.quick else f" {verdict(differences)}")
                gaps[-1][f"{name}\n{when}"] = differences
            print(line)
    draw({name: [results[path, layers, name, steps, seed] for seed in seeds] for name in DEEP}, references, gaps, args.quick, OUTPUTS / "norms_and_activations.png")
    print(f"图已写到 {OUTPUTS / 'norms_and_activations.png'}")

    print("\n这个数字对吗？")
    x = torch.randn(2, T, 64) * 3 + 1  # (b, t, d)
    ours, theirs = RMSNorm(64)(x), x / x.pow(2).mean(dim=-1, keepdim=True).sqrt()
    confirm("RMSNorm 之后，x² 的平均是 1", torch.allclose(ours, theirs, atol=1e-4), "开方或平均的维度不对")
    spread = max(params.values())
    confirm(f"各种配方的参数几乎一样多（最多差 {spread:.1%}，应在 3% 以内）", spread < 0.03, "SwiGLU 的中间宽度不是 8d/3")
    start = statistics.mean(results[path, 2, BASE, steps, seed][0][1] for seed in seeds)
    confirm(f"还没训练，损失 {start:.2f} 接近 ln {len(chars)} = {math.log(len(chars)):.2f}", abs(start - math.log(len(chars))) < 0.8, "初始权重太大")


if __name__ == "__main__":
    main()
