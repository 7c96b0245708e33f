"""第 5 章 · 实验　它是学会了，还是背下来了？

问题：　书上的训练损失降到 0.4，验证损失停在 6 以上。模型把课文背下了几成？从第几轮开始背的？
先猜：　验证损失最低的那一轮，给它课文里的 16 个词元，它能把后面 32 个一字不差地接上吗？最后一轮呢？（先想 10 秒，再运行）
看点：　① 左图：验证损失掉头往上的时候，背书开始了吗？② 中图：写出的每 8 个连着的词元，有几成课文里就有；提示词换成没见过的文字，它接着写的仍是课文；
        ③ 右图：给几个词元，它才想得起来；同样的课文，不从窗口的开头起，还想得起来吗？
动手改：1. 把 recite 里的 enumerate(zip(written, original)) 改成 enumerate(zip(written[1:], original))：错开一个词元来比，自查变成 ✗。
        2. 把 GRAM 从 8 改成 2：没见过的原文自己，也有几成的片段课文里有；片段太短，碰巧相同的就多，算不得照抄。
        3. 把 grams 里的 len(ids) - length + 1 改成 len(ids) - length：漏了最后一个片段，课文自己也数不满 32 个，自查变成 ✗。

运行：
    python ch05/experiments/exp_memorisation.py               # 图片写到 ch05/outputs/
    python ch05/experiments/exp_memorisation.py --quick
    约 90 秒，0.6 GB（2 核 CPU）；训练过的存着，再运行就立刻出结果

词表只留文章里出现过的词元（一千来个，不是 50257 个），模型比 mini 小，一个种子就只要半分钟；切窗口、批大小、dropout 都与书上相同。

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
CONFIG = {"context_length": 64, "emb_dim": 128, "n_heads": 4, "n_layers": 3, "drop_rate": 0.1, "qkv_bias": False}
LOOK_AT = [0, 2, 4, 6, 8, 10, 12, 15, 20]  # 练完第几轮看一次
PROMPT, WRITE, GRAM = 16, 32, 8  # 提示词几个词元，写几个，几个连着的算"照抄"
PLACES = 12  # 从几处起头
HINTS = [1, 2, 4, 8, 16]  # 最后看：给几个词元，它才想得起来
MOVED = CONFIG["context_length"] // 2  # 提示词不从窗口的开头取，往后挪几个


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


# region 沿用 ch04/experiments/exp_seed_noise.py: validation_loss, side_by_side, paired_interval
def validation_loss(model, ids, context_length):
    """整个验证集的平均损失：首尾相接地切成若干段，一批算完。（详解见 ch04/experiments/exp_seed_noise.py）"""
    model.eval()
    n = (len(ids) - 1) // context_length * context_length
    inputs, targets = ids[:n].view(-1, context_length), ids[1 : n + 1]  # (b, t)，(b·t,)
    with torch.no_grad():
        return nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets).item()


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


# endregion


# region 沿用 ch05/main: generate
def generate(model, idx, max_new_tokens, context_size, temperature=0.0, top_k=None, eos_id=None):
    """逐个生成词元，可以调温度、限制 top-k，遇到结束词元就停。（详解见 ch05/main/example_03_decoding.py）"""
    if not temperature >= 0:
        raise ValueError(f"温度不能是 {temperature}：0 表示贪心，越大越随意")
    if top_k is not None and not 1 <= top_k <= model.out_head.out_features:
        raise ValueError(f"top_k 应在 1 到 {model.out_head.out_features}（词表大小）之间，不能是 {top_k}")
    finished = torch.zeros(len(idx), 1, dtype=torch.bool, device=idx.device)  # (b, 1)
    for _ in range(max_new_tokens):
        idx_cond = idx[:, -context_size:]  # (b, t)
        with torch.no_grad():
            logits = model(idx_cond)  # (b, t, V)
        logits = logits[:, -1, :]  # (b, V)
        if top_k is not None:
            top_logits, _ = torch.topk(logits, top_k)  # (b, top_k)
            min_val = top_logits[:, -1:]  # (b, 1)
            logits = torch.where(logits < min_val, -torch.inf, logits)  # (b, V)
        if temperature > 0.0:
            logits = logits / temperature
            logits = logits - logits.max(dim=-1, keepdim=True).values  # (b, V)
            probs = torch.softmax(logits, dim=-1)  # (b, V)
            idx_next = torch.multinomial(probs, num_samples=1)  # (b, 1)
        else:
            idx_next = torch.argmax(logits, dim=-1, keepdim=True)  # (b, 1)
        if eos_id is not None:
            idx_next = torch.where(finished, eos_id, idx_next)  # (b, 1)
            finished = idx_next == eos_id  # (b, 1)
            if finished.all():
                break
        idx = torch.cat((idx, idx_next), dim=1)  # (b, t + 1)
    return idx


# endregion


def grams(ids, length):
    """一段词元里，所有连着 length 个的片段。

    参数:
        ids (list[int]): 词元编号
        length (int): 几个连着的

    返回:
        set[tuple]: 片段
    """
    return {tuple(ids[i : i + length]) for i in range(len(ids) - length + 1)}


def recite(written, original):
    """写出来的，从头起有几个词元与原文一字不差。

    参数:
        written, original (list[int]): 写出来的；原文里提示词后面的

    返回:
        int: 几个，遇到第一个不同的就停
    """
    return next((i for i, (ours, theirs) in enumerate(zip(written, original)) if ours != theirs), min(len(written), len(original)))


def copied(written, known):
    """写出来的片段，有几成在课文里。

    参数:
        written (list[int]): 写出来的
        known (dict): 长度 → 课文里所有那么长的片段

    返回:
        float: 0 到 1
    """
    pieces = [tuple(written[i : i + GRAM]) for i in range(len(written) - GRAM + 1)]
    return sum(piece in known[GRAM] for piece in pieces) / len(pieces)


def longest_run(written, known):
    """写出来的里面，最长的、课文里原样有的一段有几个词元。

    参数:
        written (list[int]): 写出来的
        known (dict): 长度 → 课文里所有那么长的片段，长度从 1 到 WRITE

    返回:
        int: 几个
    """
    length = 0
    # 长的片段在课文里，它的每个短片段就都在；所以一个一个地加长，到加不动为止。
    while length < len(written) and grams(written, length + 1) & known[length + 1]:
        length += 1
    return length


def probe(model, ids, known, hint=PROMPT, moved=0, temperature=0.0):
    """从 ids 里均匀地取几处，各给 hint 个词元，让它接着写 WRITE 个。

    课文取的都是训练时窗口的开头：它练的时候，这些词元就在这些位置上。

    参数:
        model (GPTModel): 模型
        ids (Tensor): 取提示词的文字，一维
        known (dict): 长度 → 课文里所有那么长的片段
        hint (int): 提示词几个词元
        moved (int): 从窗口的开头往后挪几个再取
        temperature (float): 0 是贪心

    返回:
        dict: recited（从头起平均几个一字不差）、whole（全部写对的占几成）、copied（8 个连着的有几成在课文里）、longest（最长的一段）
    """
    model.eval()
    window = CONFIG["context_length"]
    room = len(ids) - moved - PROMPT - WRITE  # 从这里以后就放不下了
    step = window if room >= window * (PLACES - 1) else 1  # 没见过的文字短，放不下几个整窗口，就不管窗口，均匀地取
    starts = [moved + i * (room // step) // (PLACES - 1) * step for i in range(PLACES)]
    prompts = torch.stack([ids[start : start + hint] for start in starts])  # (b, t)
    written = generate(model, prompts, WRITE, CONFIG["context_length"], temperature)[:, hint:].tolist()
    originals = [ids[start + hint : start + hint + WRITE].tolist() for start in starts]
    right = [recite(ours, theirs) for ours, theirs in zip(written, originals)]
    return {
        "recited": statistics.mean(right),
        "whole": sum(each == WRITE for each in right) / PLACES,
        "copied": statistics.mean(copied(each, known) for each in written),
        "longest": max(longest_run(each, known) for each in written),
    }


def load_text(path):
    """文章 → 词元编号（词表只留出现过的），前九成是课文，后一成没见过。

    参数:
        path (Path): 文本文件

    返回:
        tuple[Tensor, Tensor, int]: 课文、没见过的，都是一维；词表大小

    异常:
        ValueError: 太短
    """
    os.environ["TIKTOKEN_CACHE_DIR"] = str(find_data("tiktoken"))  # GPT-2 的词表由 setup/run.sh 放好，不联网
    found = tiktoken.get_encoding("gpt2").encode(read_text(path), disallowed_special=())
    if len(found) < 2000:
        raise ValueError(f"{path} 只有 {len(found)} 个词元，至少要 2000 个，请换长一点的文本")
    number = {token: i for i, token in enumerate(sorted(set(found)))}
    ids = torch.tensor([number[token] for token in found])
    return ids[: len(ids) * 9 // 10], ids[len(ids) * 9 // 10 :], len(number)


def train_once(path, looks, seed):
    """练到 looks 的最后一轮，中途看几次。

    参数:
        path (str): 文本文件
        looks (tuple): 练完第几轮看一次
        seed (int): 初始权重、批的次序、dropout

    返回:
        dict: looks 每次一项（train、val 是损失，课文、没见过的各一份 probe）；hints 是给几个词元 →（窗口开头的、挪了位置的）两份 probe；sampled 是按概率抽着写的
    """
    train_ids, val_ids, size = load_text(path)
    known = {length: grams(train_ids.tolist(), length) for length in range(1, WRITE + 1)}
    torch.manual_seed(seed)
    model, t = GPTModel(CONFIG | {"vocab_size": size}), CONFIG["context_length"]
    optimizer, result = torch.optim.AdamW(model.parameters(), lr=1.5e-3, weight_decay=0.1), {"looks": []}
    for epoch in range(max(looks) + 1):
        if epoch in looks:
            losses = {name: validation_loss(model, ids, t) for name, ids in (("train", train_ids), ("val", val_ids))}
            result["looks"].append(losses | {"课文": probe(model, train_ids, known), "没见过的": probe(model, val_ids, known)})
        windows = train_ids.unfold(0, t + 1, t)  # (n, t + 1)　与书上相同：每轮都在同样的地方切
        for rows in torch.randperm(len(windows)).split(2) if epoch < max(looks) else []:
            model.train()
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(windows[rows, :-1]).flatten(0, 1), windows[rows, 1:].flatten()).backward()
            optimizer.step()
    result["hints"] = {hint: [probe(model, train_ids, known, hint, moved) for moved in (0, MOVED)] for hint in HINTS}
    torch.manual_seed(seed)
    return result | {"sampled": probe(model, train_ids, known, temperature=1.0)}


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


def draw(looks, runs, path):
    """左图：两条损失；中图：背出几成；右图：给几个词元才想得起来。

    参数:
        looks (list[int]): 第几轮
        runs (list[dict]): 每个种子的 train_once 结果
        path (Path): 图片写到哪里
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.9), layout="constrained")

    def band(axis, xs, rows, label, **look):
        """一条线，几个种子的平均；带子是最小到最大。"""
        (line,) = axis.plot(xs, [statistics.mean(row) for row in rows], label=label, **look)
        axis.fill_between(xs, [min(row) for row in rows], [max(row) for row in rows], alpha=0.15, color=line.get_color())

    for name, title in (("train", "课文（训练集）"), ("val", "没见过的（验证集）")):
        band(left, looks, [[run["looks"][i][name] for run in runs] for i in range(len(looks))], title)
    left.set_ylabel("损失")
    left.set_title("过拟合")
    for where, look in (("课文", "-"), ("没见过的", ":")):
        for key, color, title in (("recited", "tab:blue", "从头起一字不差"), ("copied", "tab:red", f"{GRAM} 个连着的课文里有")):
            scale = 100 / WRITE if key == "recited" else 100
            rows = [[scale * run["looks"][i][where][key] for run in runs] for i in range(len(looks))]
            band(middle, looks, rows, f"{title}，提示词取自{where}", linestyle=look, color=color)
    middle.set_ylim(-5, 150)  # 上面留给图例
    middle.set_ylabel("几成（%）")
    middle.set_title(f"接着写 {WRITE} 个词元，贪心")
    for axis in (left, middle):
        axis.set_xlabel("练完第几轮")
        axis.legend(fontsize=8)
    hints = list(runs[0]["hints"])
    for place, title in ((0, "取自窗口的开头"), (1, f"往后挪 {MOVED} 个再取")):
        band(right, range(len(hints)), [[100 * run["hints"][hint][place]["recited"] / WRITE for run in runs] for hint in hints], title, marker="o")
    right.set_xticks(range(len(hints)), hints)
    right.set_xlabel("给它课文里的几个词元")
    right.set_ylabel("从头起一字不差的占几成（%）")
    right.legend(fontsize=8)
    right.set_title("练完以后，给几个才想得起来")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def run(args):
    """练几个种子，印表，画图，自查。

    参数:
        args (argparse.Namespace): 命令行参数，见 main
    """
    path = args.text or find_data("the-verdict.txt", "story-en.txt")
    train_ids, val_ids, size = load_text(path)
    epochs = args.epochs or (1 if args.quick else LOOK_AT[-1])
    looks = sorted({epoch for epoch in LOOK_AT if epoch < epochs} | {epochs})
    seeds = [args.seed * 1000 + i for i in range(5 if not args.quick else 1)]
    print(f"文本　{path}：课文 {len(train_ids):,} 个词元，没见过的 {len(val_ids)} 个，{size:,} 种；练 {epochs} 轮，{len(seeds)} 个种子", flush=True)
    cases = [(str(path), tuple(looks), seed) for seed in seeds]
    results = side_by_side(train_once, cases, OUTPUTS / "exp_memorisation", 1 if args.quick else None)
    runs = [results[case] for case in cases]

    def mean(number, *keys):
        """第 number 次看，几个种子的平均。"""
        values = [each["looks"][number] for each in runs]
        for key in keys:
            values = [value[key] for value in values]
        return statistics.mean(values)

    known = {length: grams(train_ids.tolist(), length) for length in range(1, WRITE + 1)}
    base = copied(val_ids.tolist(), known)
    print(f"\n① 接着写 {WRITE} 个词元（贪心，{PLACES} 处，种子的平均）。没见过的原文自己，{GRAM} 个连着的课文里也有的只占 {base:.1%}")
    print("　　　　　　　损失　　　　　提示词取自课文　　　　　　　　　　　　提示词取自没见过的")
    for number, epoch in enumerate(looks):
        cells = "".join(f"　从头对 {mean(number, where, 'recited'):4.1f} 个，照抄 {mean(number, where, 'copied'):4.0%}，最长 {mean(number, where, 'longest'):4.1f}" for where in ("课文", "没见过的"))
        print(f"　第 {epoch:2} 轮　{mean(number, 'train'):.2f} / {mean(number, 'val'):.2f}{cells}")
    print(f"\n② 练完以后，给课文里的几个词元，从头对几个（{WRITE} 个全对的占几成）")
    for place, title in ((0, "取自窗口的开头"), (1, f"往后挪 {MOVED} 个再取")):
        both = {hint: [statistics.mean(each["hints"][str(hint)][place][key] for each in runs) for key in ("recited", "whole")] for hint in HINTS}
        print("　" + "　".join(f"{hint} 个 {right:4.1f}（{whole:.0%}）" for hint, (right, whole) in both.items()) + f"　{title}")
    print(f"　按概率抽着写（温度 1），给 {PROMPT} 个：从头对 {statistics.mean(each['sampled']['recited'] for each in runs):.1f} 个，照抄 {statistics.mean(each['sampled']['copied'] for each in runs):.0%}")
    if args.quick:
        print("　只练了一个种子、一两轮：看流程，不下结论")
    else:
        low = min(range(len(looks)), key=lambda number: mean(number, "val"))
        print(f"　验证损失最低的是第 {looks[low]} 轮（{mean(low, 'val'):.2f}），那时从头对 {mean(low, '课文', 'recited'):.1f} 个；练完是 {mean(len(looks) - 1, 'val'):.2f}，从头对 {mean(len(looks) - 1, '课文', 'recited'):.1f} 个")
        place, width = paired_interval([each["hints"][str(PROMPT)][0]["recited"] - each["hints"][str(PROMPT)][1]["recited"] for each in runs])
        print(f"　给 {PROMPT} 个，窗口开头的比挪了位置的从头多对 {place:.1f} ± {width:.1f} 个（99% 区间）" + ("：分不出" if abs(place) <= width else "：连在窗口里的位置也一起背下了" if place > 0 else ""))
        gap, half = paired_interval([each["looks"][-1]["课文"]["recited"] - each["looks"][-1]["没见过的"]["recited"] for each in runs])
        print(f"　练完以后，课文比没见过的从头多对 {gap:.1f} ± {half:.1f} 个（99% 区间）" + ("：分不出" if abs(gap) <= half else "：背的是课文"))
    picture = OUTPUTS / f"memorisation{'_quick' * args.quick}.png"
    draw(looks, runs, picture)
    print(f"图片已写到 {picture}")

    print("\n这个数字对吗？")
    course = train_ids.tolist()
    confirm("课文自己：全部照抄，最长的一段就是整段", copied(course[100:132], known) == 1 and longest_run(course[100:132], known) == WRITE, "片段取错了位置")
    mixed = course[50:60] + [size] * 3 + course[300:312] + [size]  # size 不是词元，哪里也没有
    confirm(f"10 个课文、3 个没有的、12 个课文：最长的一段是 {longest_run(mixed, known)}", longest_run(mixed, known) == 12, "长度多数或少数了一个")
    confirm(f"前 10 个相同的，从头对 {recite(mixed, course[50:76])} 个", recite(mixed, course[50:76]) == 10, "没有对齐，或没有在第一个不同的地方停下")
    start = runs[0]["looks"][0]
    confirm(f"没练的时候，损失 {start['val']:.2f} 接近 ln {size} = {math.log(size):.2f}，从头对 {start['课文']['recited']:.1f} 个", abs(start["val"] - math.log(size)) < 0.7 and start["课文"]["recited"] < 1, "提示词里夹着答案")
    ends = [each["looks"][-1] for each in runs]
    confirm("课文、没见过的，从头对的都不超过写的；最长的一段不短于它", all(end["课文"]["recited"] <= WRITE and end["课文"]["longest"] >= end["课文"]["recited"] for end in ends), "比的不是同一段")


def main():
    """一轮一轮地看：背下了几成。"""
    parser = argparse.ArgumentParser(description="实验　学会了，还是背下来了")
    parser.add_argument("--epochs", type=int, help=f"练几轮（默认：{LOOK_AT[-1]}）")
    parser.add_argument("--seed", type=int, default=123, help="第一个种子是它乘 1000（默认：123）")
    parser.add_argument("--text", type=Path, help="训练用的文本（默认：the-verdict.txt，没有就用自带的 story-en.txt）")
    parser.add_argument("--quick", action="store_true", help="一个种子，只练 1 轮：看流程，不下结论")
    args = parser.parse_args()
    if args.epochs is not None and not 1 <= args.epochs <= 1000:
        parser.error(f"--epochs 应在 1 到 1000 之间，不能是 {args.epochs}")
    if not 0 <= args.seed < 2**50:
        parser.error(f"--seed 应在 0 到 {2**50} 之间，不能是 {args.seed}")
    torch.set_num_threads(1)
    try:
        run(args)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
