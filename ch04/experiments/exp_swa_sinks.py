"""第 4 章 · 实验　注意力沉点（attention sinks）：训练时全看的模型，推理时只留最近几个，会不会垮？

问题：　每层只准留 8 个词元的键和值：都留给最近的，还是分几个给开头的？损失差多少？
先猜：　开头的那个字符，离得最远，最没有用；留着它，有好处吗？（先想 10 秒，再运行）
看点：　① 上表：训练时全看、推理时才扔，损失高多少；② 同样留 8 个，把最近的换成开头的，是更低、更高，还是分不出；
        ③ 第一个词元分到的注意力，是平均分的几倍：大模型里它常占一半以上，因为 softmax 必须加起来是 1，没有想看的，就都堆在它身上；
        扔掉这样的沉点，损失会垮（Xiao 等，StreamingLLM，2023）。这个小模型长出沉点了吗？长出来之前，留着开头的有没有用？
动手改：1. --budget 16：留得多了，扔掉中间的还要紧吗？
        2. 把 too_early[:, : self.num_sinks] = False 那一行删掉：开头的也看不见了，自查「看得见的正好是」变成 ✗。
        3. 把 train_once 里的 restrict(model, CONTEXT, 0) 改成 restrict(model, budget, 0)：训练时就只看最近的 8 个，推理时再这样留，就不比全看的差了。

运行：
    python ch04/experiments/exp_swa_sinks.py               # 图片写到 ch04/outputs/
    python ch04/experiments/exp_swa_sinks.py --quick
    约 45 秒，0.8 GB（2 核 CPU）；训练过的存着，再运行就立刻出结果

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
CONTEXT, SINKS = 32, [0, 1, 2, 4]  # 上下文长度；只准留那么多时，其中开头的留几个
CONFIG = {"context_length": CONTEXT, "emb_dim": 64, "n_heads": 4, "n_layers": 2, "drop_rate": 0.0, "qkv_bias": False}


# region 改写 ch03/main: MultiHeadAttention
class MultiHeadAttention(nn.Module):
    """多头注意力，可以只看开头的几个和最近的几个。（原版详解见 ch03/main/example_05_multihead_attention.py）"""

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
        self.window, self.num_sinks = context_length, 0  # 改：最近的看几个（含自己），开头的看几个；推理时由 restrict 改小

    def forward(self, x):
        b, t, _ = x.shape
        queries = self.W_query(x)  # (b, t, d_out)
        keys = self.W_key(x)  # (b, t, d_out)
        values = self.W_value(x)  # (b, t, d_out)
        queries = queries.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        keys = keys.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        values = values.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        scores = queries @ keys.transpose(2, 3)  # (b, h, t, t)
        too_early = torch.ones_like(self.mask[:t, :t]).tril(-self.window)  # (t, t)　改：窗口之外的过去也遮掉
        too_early[:, : self.num_sinks] = False  # 改：开头的几个例外，永远看得见
        scores.masked_fill_(self.mask[:t, :t] | too_early, -torch.inf)  # 改：两样一起遮
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


# region 沿用 ch04/experiments/exp_moe.py: told
def told(differences, quick):
    """几个种子的差，写成一句：平均 ± 99% 区间的半宽，再加结论；训练太短就不下结论。（详解见 ch04/experiments/exp_moe.py）"""
    if quick:
        return f"{statistics.mean(differences):+.3f}　训练太短：看流程，不下结论"
    return "{:+.3f} ± {:.3f}　".format(*paired_interval(differences)) + verdict(differences)


# endregion


def restrict(model, budget, sinks):
    """只准每层看 budget 个：开头的 sinks 个，其余是最近的。遮掉的，就是可以从缓存里扔掉的（exp_swa.py 的自查：两者 logits 相同）。

    参数:
        model (GPTModel): 训练过的模型
        budget (int): 一共几个
        sinks (int): 其中开头的几个
    """
    for block in model.trf_blocks:
        block.att.window, block.att.num_sinks = budget - sinks, sinks


def drop_at_inference(model, ids, budget):
    """训练时全看的模型，推理时每层只准留 budget 个：不同的留法，损失各是多少。

    参数:
        model (GPTModel): 训练过的模型
        ids (Tensor): 验证集的编号，一维
        budget (int): 一共几个

    返回:
        dict: losses 是全看的、然后 SINKS 里每一种的损失，只算第 budget 个位置之后的；shares 是每一层、每个头，最后一个位置给第一个词元的注意力，是平均分的几倍
    """
    model.eval()
    n = (len(ids) - 1) // CONTEXT * CONTEXT
    inputs, targets = ids[:n].view(-1, CONTEXT), ids[1 : n + 1].view(-1, CONTEXT)  # (b, t)，(b, t)
    losses, shares = [], []
    for kept, sinks in [(CONTEXT, 0), *[(budget, sinks) for sinks in SINKS]]:
        restrict(model, kept, sinks)
        with torch.no_grad():
            logits = model(inputs)[:, budget:]  # (b, t - budget, V)　这些位置才有词元被扔掉
        losses.append(nn.functional.cross_entropy(logits.flatten(0, 1), targets[:, budget:].flatten()).item())
    restrict(model, CONTEXT, 0)
    # dropout 的输出就是注意力权重（评估模式下什么也不丢），形状是 (b, h, t, t)；挂一个钩子，不改模型就看得见。
    hooks = [block.att.dropout.register_forward_hook(lambda _module, _inputs, out: shares.append((out[:, :, -1, 0].mean(dim=0) * CONTEXT).tolist())) for block in model.trf_blocks]
    with torch.no_grad():
        model(inputs)
    for hook in hooks:
        hook.remove()
    return {"losses": losses, "shares": shares}


def train_once(path, budget, steps, seed):
    """训练一个每层都全看的小模型，再看推理时扔掉中间的会怎样。

    参数:
        path (str): 文本文件
        budget (int): 推理时每层留几个
        steps (int): 走几步
        seed (int): 初始权重和批的次序

    返回:
        dict: curve 是 train 的结果；losses、shares 见 drop_at_inference
    """
    train_ids, val_ids, chars = encode_characters(Path(path).read_text(encoding="utf-8"))
    torch.manual_seed(seed)
    model = GPTModel(CONFIG | {"vocab_size": len(chars)})
    restrict(model, CONTEXT, 0)  # 训练时全看
    curve = train(model, train_ids, val_ids, CONTEXT, steps, seed)
    return {"curve": curve} | drop_at_inference(model, val_ids, budget)


def draw(names, losses, differences, shares, quick, path):
    """三幅图：每种留法的损失；留法之间的差；第一个词元分到的注意力。

    参数:
        names (list[str]): 全看、每种留法的名字
        losses (list): 每个种子一项，与 names 一一对应
        differences (dict): 名字 → 每个种子的差
        shares (Tensor): 第一个词元分到的注意力；三维依次是种子、层、头
        quick (bool): True 时不画区间
        path (Path): 图片写到哪里
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained", width_ratios=[1, 1.2, 0.8])
    for each in losses:
        left.plot(range(len(names)), each, color="tab:blue", marker="o", linewidth=0.8, alpha=0.5)
    left.set_xticks(range(len(names)), [name.replace("，", "\n") for name in names], fontsize=8)
    left.set_xlabel("推理时留谁（一条线一个种子）")
    left.set_ylabel("损失（扔过词元的位置）")
    draw_differences(middle, differences, quick)
    middle.locator_params(axis="x", nbins=5)
    middle.set_xlabel("损失的差（往左是更低）")
    middle.set_ylabel("留法")
    for layer in range(shares.shape[1]):
        right.scatter([layer + 1] * shares[:, layer].numel(), shares[:, layer].flatten(), color="tab:blue", alpha=0.5)
    right.axhline(1, color="0.5", linestyle="--", label="平均分")
    right.set_xticks(range(1, shares.shape[1] + 1))
    right.set_xlim(0.5, shares.shape[1] + 0.5)
    right.set_xlabel("第几层（一点是一个头）")
    right.set_ylabel("第一个词元的注意力，是平均分的几倍")
    right.legend()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


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


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def main():
    """训练几个全看的小模型，推理时才扔掉中间的词元：留最近的，还是分几个给开头的。"""
    parser = argparse.ArgumentParser(description="实验　注意力沉点：推理时才扔，留谁")
    parser.add_argument("--budget", type=int, default=8, help="推理时每层留几个词元的键和值（默认：8）")
    parser.add_argument("--steps", type=int, default=600, help="每次训练几步（默认：600）")
    parser.add_argument("--seeds", type=int, default=5, help="训练几个种子，5 到 10（默认：5）")
    parser.add_argument("--seed", type=int, default=123, help="第一个种子；各个种子是它乘 1000 再加 0、1、2……（默认：123）")
    parser.add_argument("--quick", action="store_true", help="两个种子，各训练 5 步：看流程，不下结论")
    args = parser.parse_args()
    for name, low, high in [("budget", SINKS[-1] + 1, CONTEXT - 1), ("steps", 1, 100000), ("seeds", 5, 10), ("seed", 0, 2**50)]:
        if not low <= getattr(args, name) <= high:
            parser.error(f"--{name} 应在 {low} 到 {high} 之间，不能是 {getattr(args, name)}")
    budget, steps, seeds = args.budget, 5 if args.quick else args.steps, [args.seed * 1000 + i for i in range(2 if args.quick else args.seeds)]
    path = find_data("the-verdict.txt", "story-en.txt")
    train_ids, val_ids, chars = encode_characters(path.read_text(encoding="utf-8"))
    bigram = bigram_loss(train_ids, val_ids, len(chars))
    print(f"数据　{path}　{len(train_ids) + len(val_ids):,} 个字符，{len(chars)} 种")
    print(f"模型　2 层，d = 64，4 个头，上下文 {CONTEXT}，训练时全看；{len(seeds)} 个种子，各 {steps} 步")
    done = side_by_side(train_once, [(str(path), budget, steps, seed) for seed in seeds], OUTPUTS / "exp_swa_sinks", workers=1 if args.quick else None)
    results = list(done.values())
    lowest = statistics.mean(milestones(result["curve"])[1] for result in results)
    short = args.quick or lowest > bigram  # 还不如数数：没练够

    names = ["全看"] + [f"最近 {budget - sinks}" + f"，开头 {sinks}" * (sinks > 0) for sinks in SINKS]
    losses, shares = [result["losses"] for result in results], torch.tensor([result["shares"] for result in results])
    print(f"\n最低的验证损失 {lowest:.3f}（只看前一个字符、数数，是 {bigram:.3f}）")
    print(f"推理时每层只留 {budget} 个，损失（{len(seeds)} 个种子的平均，只算扔过词元的位置）：")
    print("　".join(f"{name}：{statistics.mean(each[i] for each in losses):.3f}" for i, name in enumerate(names)))
    print("同一个模型的差（± 是 99% 区间的半宽，比它小的差，这个实验看不出）：")
    differences = {f"{names[1]}\n减全看": [each[1] - each[0] for each in losses]}
    differences |= {f"{name.replace('，', chr(10))}\n减{names[1]}": [each[i] - each[1] for each in losses] for i, name in enumerate(names) if i > 1}
    for name, values in differences.items():
        print(f"  {name.replace(chr(10), '，').replace('，减', ' 减 ').ljust(18, '　')}{told(values, short)}")
    print(f"最后一个位置给第一个词元的注意力，是平均分的几倍：平均 {shares.mean():.1f}，最多的一个头 {shares.max():.1f}（全给它是 {CONTEXT}）")
    draw(names, losses, differences, shares, short, OUTPUTS / "swa_sinks.png")
    print(f"图片已写到 {OUTPUTS / 'swa_sinks.png'}")

    print("\n这个数字对吗？")
    torch.manual_seed(args.seed)
    model, ids = GPTModel(CONFIG | {"vocab_size": len(chars), "n_layers": 1}).eval(), val_ids[None, :CONTEXT]
    restrict(model, budget, 2)
    embedded = []
    hook = model.tok_emb.register_forward_hook(lambda _module, _inputs, output: embedded.append(output))  # 留住词嵌入，好对它求梯度
    (gradient,) = torch.autograd.grad(model(ids)[0, -1].square().sum(), embedded)  # (1, t, d)
    hook.remove()
    seen = (gradient[0].norm(dim=-1) > 0).nonzero().flatten().tolist()
    confirm(f"一层里，看得见的正好是开头 2 个和最近 {budget - 2} 个", seen == [0, 1, *range(CONTEXT - budget + 2, CONTEXT)], "沉点留在缓存里，掩码却把它们遮了")
    restrict(model, CONTEXT, 2)
    everything = model(ids)
    restrict(model, CONTEXT, 0)
    confirm("窗口放得下整句时，有没有沉点都一样", torch.equal(everything, model(ids)), "沉点把未来的也放出来了")
    row = torch.tensor([each["shares"] for each in results])
    confirm(f"第一个词元的份额在 0 到 {CONTEXT} 倍之间", bool((0 <= row).all() and (row <= CONTEXT).all()), "拿到的不是 softmax 之后的权重")


if __name__ == "__main__":
    main()
