"""第 4 章 · 实验　词嵌入和输出层共用一份权重，是赚是赔？

问题：　GPT-2 让输出层与词嵌入共用一份权重（weight tying），省下 3860 万个参数；书里分开存。共用之后，学得更好还是更差？
先猜：　词嵌入按 nn.Embedding 的默认初始化，标准差是 1。直接拿它当输出层，没训练时的损失还会是 ln 50257 = 10.82 吗？（先想 10 秒，再运行）
看点：　① 初始化不改就共用，一开始的损失高得离谱：logits 太大了；所以共用总要连初始化一起改，两样混在一起，就不知道是谁的功劳；
        ② 分开来比：只改初始化（都分开），只改共用（都缩小），各差多少；③ 共用的那份权重，梯度是两头的梯度之和。
动手改：1. 把 SMALL_STD 从 0.02 改成 0.2：共用的初始损失又变高了，自查里有一条变成 ✗。
        2. --emb-dim 64：块小了，词嵌入占的比例更大，共用省下的比例也更大。
        3. 把 tie 里的 model.out_head.weight = model.tok_emb.weight 改成 model.out_head.weight.data.copy_(model.tok_emb.weight)（只复制了一次，不是共用）：
           一开始相同，走一步就各走各的，参数也没有少，自查变成 ✗。

运行：
    python ch04/experiments/exp_weight_tying.py               # 图片写到 ch04/outputs/
    python ch04/experiments/exp_weight_tying.py --quick
    约 70 秒，0.8 GB（2 核 CPU）；训练过的存着，再运行就立刻出结果

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　k 每个头的维度　V 词表大小
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
import tiktoken
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"

# 改这里
SMALL_STD = 0.02  # GPT-2 的词嵌入就是这样初始化的：当输出层用时，logits 才不会太大
SMALL_V = 512  # 训练用的小词表：50257 行的嵌入，一个种子就要训练好几分钟；小词表才练得起许多个种子
VARIANTS = {"分开，默认": (False, False), "分开，缩小": (False, True), "共用，默认": (True, False), "共用，缩小": (True, True)}  # 名字 → 共用吗，缩小吗
COMPARE = [("只改初始化，都分开", "分开，缩小", "分开，默认"), ("只改共用，都缩小", "共用，缩小", "分开，缩小"), ("两样一起改", "共用，缩小", "分开，默认")]
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


def build(tied, small, cfg, seed):
    """建一个模型；同一个种子下，各块的初始权重逐位相同，只差两头。

    参数:
        tied (bool): 输出层与词嵌入共用一份权重吗
        small (bool): 两头的初始权重缩小到标准差 SMALL_STD 吗
        cfg (dict): 模型配置
        seed (int): 初始权重的随机种子

    返回:
        GPTModel: 模型
    """
    torch.manual_seed(seed)
    model = GPTModel(cfg)
    if small:
        with torch.no_grad():
            # 位置嵌入一起缩小，否则词的信息会被位置盖住；输出层默认的标准差是 1 / √(3d)，也缩到同样大
            for weight in (model.tok_emb.weight, model.pos_emb.weight, model.out_head.weight):
                weight.mul_(SMALL_STD / weight.std())
    if tied:
        tie(model)
    return model


def small_tokenizer(size):
    """GPT-2 的分词器，只留前 size 个词元：编号就是合并的先后，所以等于少合并几次。

    参数:
        size (int): 词表大小，至少 256（每个字节一个）

    返回:
        tiktoken.Encoding: 分词器
    """
    gpt2 = tiktoken.get_encoding("gpt2")
    ranks = {token: rank for token, rank in gpt2._mergeable_ranks.items() if rank < size}
    return tiktoken.Encoding("small", pat_str=gpt2._pat_str, mergeable_ranks=ranks, special_tokens={})


def small_config(emb_dim, length=16):
    """训练用的小模型的配置。

    参数:
        emb_dim (int): 嵌入维度
        length (int): 上下文长度

    返回:
        dict: 配置
    """
    return {"vocab_size": SMALL_V, "context_length": length, "emb_dim": emb_dim, "n_heads": 4, "n_layers": 2, "drop_rate": 0.0, "qkv_bias": False}


# region 沿用 ch04/experiments/exp_seed_noise.py: bigram_loss, validation_loss, train, milestones, side_by_side, paired_interval, verdict, draw_differences
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


def train_once(path, tied, small, steps, seed):
    """训练一次：共用不共用、初始化缩小不缩小由参数定，其余都相同。

    参数:
        path (str): 文本文件
        tied (bool): 共用吗
        small (bool): 缩小吗
        steps (int): 走几步
        seed (int): 初始权重和批的次序

    返回:
        tuple[list, bool]: train 的结果；训练完，两头还是同一份权重吗
    """
    ids = torch.tensor(small_tokenizer(SMALL_V).encode(read_text(path)))
    cut = len(ids) * 9 // 10
    model = build(tied, small, small_config(64), seed)
    curve = train(model, ids[:cut], ids[cut:], 16, steps, seed)
    return curve, torch.equal(model.out_head.weight, model.tok_emb.weight)


def loss_of(model, batch):
    """一批的损失。

    参数:
        model (GPTModel): 模型
        batch (Tensor): 词元编号，(b, t)；前 t − 1 个是输入，后 t − 1 个是目标

    返回:
        Tensor: 损失
    """
    return nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def gradient_gap(cfg, batch):
    """共用时的梯度，与分开时两头的梯度之和，相差多少。

    参数:
        cfg (dict): 模型配置
        batch (Tensor): 一批，(b, t)

    返回:
        float: 最大的差，除以梯度最大的绝对值
    """
    tied, separate = build(True, True, cfg, 123), build(False, True, cfg, 123)
    separate.load_state_dict(tied.state_dict())  # 同样的数，但是两份
    for model in (tied, separate):
        loss_of(model, batch).backward()
    both = separate.tok_emb.weight.grad + separate.out_head.weight.grad  # (V, d)
    return ((tied.tok_emb.weight.grad - both).abs().max() / both.abs().max()).item()


def draw(curves, bigram, gaps, quick, path):
    """左图：四种的全程；中图：除去一开始就离谱的，放大；右图：配对的差。

    参数:
        curves (dict): 名字 → 每个种子一条曲线
        bigram (float): 只看前一个词元的损失
        gaps (dict): 名字 → 每个种子的差
        quick (bool): True 时不画区间
        path (Path): 图片写到哪里
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained", width_ratios=[1, 1.1, 1.2])
    for (name, each), color in zip(curves.items(), ["0.3", "tab:blue", "tab:red", "tab:green"]):
        for i, curve in enumerate(each):
            left.plot(*zip(*curve), color=color, linewidth=1, label=name if i == 0 else None)
            if name != "共用，默认":
                middle.plot(*zip(*curve[1:]), color=color, linewidth=1, label=name if i == 0 else None)
    middle.axhline(bigram, color="0.5", linestyle="--", label="只看前一个词元，数数")
    left.set_title("四种的全程")
    middle.set_title("除去「共用，默认」，放大")
    for axis in (left, middle):
        axis.set_xlabel("训练步数")
        axis.set_ylabel("验证损失")
        axis.legend(fontsize=8)
    draw_differences(right, gaps, quick)
    right.set_xlabel("损失的差（往左是更低）")
    right.set_title("同一个种子配对相减")
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
    """先看 50257 个词元时的参数和初始损失，再用小词表各训练几个种子，共用和初始化分开来比。"""
    parser = argparse.ArgumentParser(description="实验　词嵌入和输出层共用一份权重")
    parser.add_argument("--emb-dim", type=int, default=128, help="量参数和初始损失的模型，嵌入维度 d，要能被 32 整除（默认：128）")
    parser.add_argument("--steps", type=int, default=400, help="各训练几步（默认：400）")
    parser.add_argument("--seeds", type=int, default=5, help="几个种子，5 到 10（默认：5）")
    parser.add_argument("--seed", type=int, default=123, help="第一个种子是它乘 1000（默认：123）")
    parser.add_argument("--text", type=Path, help="训练用的文本（默认：the-verdict.txt，没有就用自带的 story-en.txt）")
    parser.add_argument("--quick", action="store_true", help="每次只训练 1 步：看流程，不下结论")
    args = parser.parse_args()
    if not 32 <= args.emb_dim <= 1024 or args.emb_dim % 32 != 0:
        parser.error(f"--emb-dim 应在 32 到 1024 之间，并且能被 32（每个头的维度）整除，不能是 {args.emb_dim}")
    for name, low, high in [("steps", 1, 10000), ("seeds", 5, 10), ("seed", 0, 2**50)]:
        if not low <= getattr(args, name) <= high:
            parser.error(f"--{name} 应在 {low} 到 {high} 之间，不能是 {getattr(args, name)}")
    try:
        path = args.text or find_data("the-verdict.txt", "story-en.txt")
        text = read_text(path)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    small_ids = torch.tensor(small_tokenizer(SMALL_V).encode(text))
    ids = torch.tensor(tiktoken.get_encoding("gpt2").encode(text, disallowed_special=()))
    if len(ids) < 700:
        parser.error(f"{path} 只有 {len(ids)} 个词元，至少要 700 个，请换长一点的文本")
    torch.set_num_threads(1)
    steps, seeds = 1 if args.quick else args.steps, [args.seed * 1000 + i for i in range(args.seeds)]

    batch = ids[: 4 * 65].view(4, 65)  # (b, t)
    cfg = {"vocab_size": 50257, "context_length": 64, "emb_dim": args.emb_dim, "n_heads": args.emb_dim // 32, "n_layers": 4, "drop_rate": 0.0, "qkv_bias": False}
    print(f"① 没训练：4 层，d = {args.emb_dim}，词表 50257；文本 {path.name}", flush=True)
    counts, begin = {}, {}
    for name, variant in VARIANTS.items():
        model = build(*variant, cfg, 123)
        counts[name] = sum(p.numel() for p in model.parameters())  # parameters() 认得同一个 Parameter，只数一次
        with torch.no_grad():
            begin[name] = loss_of(model, batch).item()
        print(f"  {name.ljust(7, '　')}参数 {counts[name]:>11,}　权重、梯度和两份动量 {16 * counts[name] / 2**20:6.1f} MB　损失 {begin[name]:7.2f}")
    saved = counts["分开，默认"] - counts["共用，默认"]
    print(f"  共用省下 {saved:,} 个参数，是全部的 {saved / counts['分开，默认']:.0%}；GPT-2 small 省 38,597,376 个，24%，xl 只省 5%。")
    print(f"  不缩小就共用，logits 是两个长向量的点积，标准差约 √d = {math.sqrt(args.emb_dim):.0f}，损失 {begin['共用，默认']:.1f}；缩小以后 {begin['共用，缩小']:.2f}。")

    cut = len(small_ids) * 9 // 10
    bigram = bigram_loss(small_ids[:cut], small_ids[cut:], SMALL_V)
    print(f"\n② 训练：2 层，d = 64，上下文 16；词表只留 GPT-2 的前 {SMALL_V} 个（多种子才练得起），{len(small_ids):,} 个词元，各 {steps} 步，{len(seeds)} 个种子", flush=True)
    cases = [(str(path), *variant, steps, seed) for variant in VARIANTS.values() for seed in seeds]
    results = side_by_side(train_once, cases, OUTPUTS / "exp_weight_tying", workers=1 if args.quick else None)
    curves = {name: [results[(str(path), *variant, steps, seed)][0] for seed in seeds] for name, variant in VARIANTS.items()}
    ends = {name: [milestones(curve) for curve in each] for name, each in curves.items()}
    print(f"最低的验证损失（只看前一个词元、数数，是 {bigram:.3f}）")
    for name, each in ends.items():
        print(f"  {name.ljust(7, '　')}" + "　".join(f"{low:.3f}" for _, low in each) + f"　平均 {statistics.mean(low for _, low in each):.3f}")
    print("同一个种子配对相减，99% 区间：" + ("训练太短：看流程，不下结论" if args.quick else ""))
    gaps = {}
    for title, one, other in COMPARE:
        for which, when in enumerate(WHEN):
            gaps[f"{title}：\n{when}"] = differences = [mine[which] - base[which] for mine, base in zip(ends[one], ends[other])]
            mean, half = paired_interval(differences)
            print(f"  {title.ljust(11, '　')}（{one} 减 {other}）{when.ljust(7, '　')}　{mean:+.3f} ± {half:.3f}" + ("" if args.quick else f"　{verdict(differences)}"))
    if not args.quick:
        print("  这只是一段短文、一个小模型、同一个学习率。原书作者的经验是分开更好；")
        print("  Press 和 Wolf（2017，arXiv 1608.05859）提出共用，是因为他们的语言模型（LSTM）共用之后困惑度更低，参数也少。")
    draw(curves, bigram, gaps, args.quick, OUTPUTS / "weight_tying.png")
    print(f"图片已写到 {OUTPUTS / 'weight_tying.png'}")

    print("\n这个数字对吗？")
    confirm(f"共用省下的正好是 V × d = 50257 × {args.emb_dim} = {50257 * args.emb_dim:,}", saved == 50257 * args.emb_dim, "复制了一份，而不是共用")
    shared = [results[case][1] == case[1] for case in cases]
    confirm("训练完，共用的两头仍相同，分开的不同", all(shared), "优化器或 load_state_dict 之后又变成了两份")
    near = all(abs(begin[name] - math.log(50257)) < 0.6 for name in VARIANTS if name != "共用，默认")
    confirm("另外三种，初始损失都接近 ln 50257 = 10.82", near, "初始的 logits 太大")
    confirm(f"不缩小就共用，初始损失（{begin['共用，默认']:.1f}）明显更高", begin["共用，默认"] > math.log(50257) + 1, "词嵌入不是默认的初始化")
    gap = gradient_gap(small_config(64), small_ids[:30].view(2, 15))
    confirm(f"共用的梯度 = 词嵌入的梯度 + 输出层的梯度（最多差 {gap:.0e}）", gap < 1e-4, "两份权重没有真的共用")


if __name__ == "__main__":
    main()
