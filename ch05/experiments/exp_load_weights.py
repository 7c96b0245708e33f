"""第 5 章 · 实验　装权重：同一份文件，内存可以占两份，也可以几乎不占

问题：　书上 5.4 节的写法（建模型、torch.load、load_state_dict），内存最多占几份权重？换几种写法，各占几份，各要多久？
先猜：　124M 的权重是 622 MB。最省的一种，装好之后进程自己的内存多了多少？（先想 10 秒，再运行）
看点：　① 左图：深色是进程自己的，非有不可；浅色是文件的映射（mmap），内存紧了系统随时收回；② 右图：建模型时的随机初始化也要时间，装上权重又全扔掉；
        ③ meta 设备第一次用，PyTorch 要导入一批代码，印在表的下面：
        只装一次小模型，省下的时间还不够付它；④ 自查里的四个陷阱，没有一个会报错。
动手改：1. 把 meta 里的 assign=True 去掉：load_state_dict 只印一句英文警告，权重一个也没装上，模型用不了，脚本停在那里。
        2. 把 WAYS 里「一层一层地抄」的 by_layer 改成 plain：自己的内存从一份变成两份。
        3. 把 by_layer 里的 target.copy_(weights.get_tensor(name)) 改成 target.add_(weights.get_tensor(name))：加在了随机的初始值上，自查变成 ✗。

运行：
    python ch05/experiments/exp_load_weights.py               # 图片写到 ch05/outputs/；临时占 1.3 GB 磁盘，用完就删
    python ch05/experiments/exp_load_weights.py --quick
    约 90 秒，1.6 GB（2 核 CPU）

权重是随机的，大小与 GPT-2 的 124M 相同：量的是装，不是说话。每种写法都在新的进程里量：内存的峰值只升不降。

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　k 每个头的维度　V 词表大小
"""

import argparse
import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from safetensors import safe_open
from safetensors.torch import load_file, save_file

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"

# 改这里
BASE = {"vocab_size": 50257, "context_length": 1024, "drop_rate": 0.0, "qkv_bias": True}
CONFIGS = {
    "tiny": BASE | {"emb_dim": 64, "n_heads": 2, "n_layers": 2},
    "124M": BASE | {"emb_dim": 768, "n_heads": 12, "n_layers": 12},
    "355M": BASE | {"emb_dim": 1024, "n_heads": 16, "n_layers": 24},
}
ROUNDS = 3  # 轮流量几遍


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


# region 沿用 ch05/experiments/exp_gradient_accumulation.py: peak_memory, fresh
def peak_memory():
    """这个进程到现在为止，内存最多占过多少。（详解见 ch05/experiments/exp_gradient_accumulation.py）"""
    if (status := Path("/proc/self/status")).is_file():
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text(encoding="utf-8"))[1]) / 2**10
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def fresh(*arguments):
    """在新的进程里运行这个脚本：峰值只升不降，同一个进程里量第二次，看到的还是第一次的。（详解见 ch05/experiments/exp_gradient_accumulation.py）"""
    command = [sys.executable, str(Path(__file__).resolve()), *map(str, arguments)]
    kept = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
    clean = {name: value for name, value in os.environ.items() if name not in kept}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=clean | {"PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"})
    if done.returncode != 0:
        raise OSError(f"量内存的进程中途停了（退出码 {done.returncode}），多半是内存不够：关掉别的程序，或加 --quick")
    return json.loads(done.stdout.splitlines()[-1])


# endregion


# 每种写法都返回（模型，状态字典）：状态字典也交出来，量内存的时候它还在，与装权重时的最高点一样。


def plain(config, folder):
    """书上的写法：模型一份（随机的），文件读进来一份，再抄过去。

    参数:
        config (dict): 模型配置
        folder (Path): weights.pth 在哪里

    返回:
        tuple[GPTModel, dict]: 模型；状态字典
    """
    model = GPTModel(config)
    state = torch.load(folder / "weights.pth", weights_only=True)["model"]
    model.load_state_dict(state)
    return model, state


def mapped(config, folder):
    """只加 mmap=True：文件不读进来，抄到哪里读到哪里。

    参数:
        config (dict): 模型配置
        folder (Path): weights.pth 在哪里

    返回:
        tuple[GPTModel, dict]: 模型；状态字典
    """
    model = GPTModel(config)
    state = torch.load(folder / "weights.pth", weights_only=True, mmap=True)["model"]
    model.load_state_dict(state)
    return model, state


def meta(config, folder, mmap=False):
    """模型先建在 meta 设备上：只有形状，没有数，不占内存，也不做随机初始化；再把文件里的张量直接换上去。

    参数:
        config (dict): 模型配置
        folder (Path): weights.pth 在哪里
        mmap (bool): True 时文件也只是映射

    返回:
        tuple[GPTModel, dict]: 模型；状态字典
    """
    with torch.device("meta"):
        model = GPTModel(config)
    state = torch.load(folder / "weights.pth", weights_only=True, mmap=mmap)["model"]
    # assign=True：不是把数抄进原来的参数，而是换掉参数。meta 上的参数没有地方可以抄。
    model.load_state_dict(state, assign=True)
    return model, state


def safetensors(config, folder):
    """meta 设备加 safetensors：load_file 本来就是映射，不用另外说。

    参数:
        config (dict): 模型配置
        folder (Path): weights.safetensors 在哪里

    返回:
        tuple[GPTModel, dict]: 模型；状态字典
    """
    with torch.device("meta"):
        model = GPTModel(config)
    state = load_file(folder / "weights.safetensors")
    model.load_state_dict(state, assign=True)
    return model, state


def by_layer(config, folder):
    """先建好模型，再一个张量一个张量地抄：任何时候都只多出一个张量。要换设备、换精度、合并张量，就用它。

    参数:
        config (dict): 模型配置
        folder (Path): weights.safetensors 在哪里

    返回:
        tuple[GPTModel, None]: 模型；没有状态字典

    异常:
        ValueError: 文件里的名字与模型的不同
    """
    model = GPTModel(config)
    targets = model.state_dict()  # 不是抄一份：里面的张量与参数共用内存
    with safe_open(folder / "weights.safetensors", "pt") as weights, torch.no_grad():
        if set(weights.keys()) != set(targets):  # load_state_dict 会查，自己抄就要自己查
            raise ValueError(f"文件里的名字与模型的不同：{', '.join(sorted(set(weights.keys()) ^ set(targets))[:3])}")
        for name, target in targets.items():
            target.copy_(weights.get_tensor(name))
    return model, None


WAYS = {  # 名字 → 写法
    "书上的写法": plain,
    "mmap": mapped,
    "meta": meta,
    "meta + mmap": lambda config, folder: meta(config, folder, mmap=True),
    "meta + safetensors": safetensors,
    "一层一层地抄": by_layer,
}


def own_memory(field="RssAnon"):
    """进程自己的内存（匿名页）现在有多少：映射的文件不算，那些系统随时可以收回，要用时再从文件读。

    参数:
        field (str): "RssAnon" 只算自己的；"VmRSS" 连映射的文件也算

    返回:
        float 或 None: MB；只有 Linux 量得了
    """
    status = Path("/proc/self/status")
    return int(re.search(rf"{field}:\s+(\d+)", status.read_text(encoding="utf-8"))[1]) / 2**10 if status.is_file() else None


def look(model):
    """前向一次，把 logits 变成一个摘要：装得一样，就逐位相同。

    参数:
        model (GPTModel): 装好的模型

    返回:
        str: 摘要
    """
    with torch.no_grad():
        logits = model.eval()(torch.arange(32)[None])  # (b, t, V)
    return hashlib.sha256(logits.numpy().tobytes()).hexdigest()


def measure(way, size, folder):
    """在这个进程里装一次。

    参数:
        way, size (str): WAYS、CONFIGS 里的名字
        folder (Path): 权重文件在哪里

    返回:
        dict: load、forward（CPU 秒），peak、own（装好时比装之前多了多少 MB，量不了是 None），digest；first、first_own 是第一次用 meta 设备的时间和内存
    """
    torch.set_num_threads(1)
    look(GPTModel(CONFIGS["tiny"]))  # 热身：第一次前向要装好数学库
    own, began = own_memory(), time.process_time()
    with torch.device("meta"):  # 第一次用 meta 设备，PyTorch 要导入一大批 Python 代码，与权重多大无关：分开量
        GPTModel(CONFIGS["tiny"])
    first = {"first": time.process_time() - began, "first_own": own and own_memory() - own}
    peak, own, began = own_memory("VmRSS") or peak_memory(), own_memory(), time.process_time()
    model, state = WAYS[way](CONFIGS[size], folder)
    load = time.process_time() - began
    result = {"load": load, "peak": peak and peak_memory() - peak, "own": own and own_memory() - own}
    del state
    began = time.process_time()
    return result | first | {"digest": look(model), "forward": time.process_time() - began}


def write_weights(size, folder):
    """写一份随机的权重，两种格式。

    参数:
        size (str): CONFIGS 里的名字
        folder (Path): 写到哪里

    返回:
        tuple[float, str]: 权重有多少 MB；装对了的摘要

    异常:
        OSError: 磁盘满了
    """
    torch.manual_seed(123)
    model = GPTModel(CONFIGS[size])
    try:
        torch.save({"config": CONFIGS[size], "model": model.state_dict()}, folder / "weights.pth")
        save_file(model.state_dict(), folder / "weights.safetensors")
    except Exception:  # 磁盘满了，两个包报的错各不相同
        raise OSError(f"写不进 {folder}：磁盘满了，或没有写的权限；{size} 要 {4 * sum(p.numel() for p in model.parameters()) / 5e8:.1f} GB") from None
    return sum(tensor.nbytes for tensor in model.state_dict().values()) / 2**20, look(model)


def traps(folder):
    """四个不报错的陷阱，在小模型上各试一次。

    参数:
        folder (Path): 放文件的地方

    返回:
        dict: 名字 → 真是这样吗
    """
    config, found = CONFIGS["tiny"], {}
    write_weights("tiny", folder)
    with torch.device("meta"):
        model = GPTModel(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.load_state_dict(load_file(folder / "weights.safetensors"))
    found["建在 meta 上却忘了 assign=True：只有一句警告，权重一个也没装上"] = all(p.is_meta for p in model.parameters())

    model = GPTModel(config)
    optimizer = torch.optim.AdamW(model.parameters())
    model.load_state_dict(load_file(folder / "weights.safetensors"), assign=True)
    mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
    found["先建优化器、后 assign：优化器管的还是旧参数，怎么练都不动"] = not any(id(p) in mine for p in model.parameters())

    save_file({name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()}, folder / "half.safetensors")
    model.load_state_dict(load_file(folder / "half.safetensors"), assign=True)
    halved = model.tok_emb.weight.dtype
    model = GPTModel(config)
    model.load_state_dict(load_file(folder / "half.safetensors"))
    found["半精度的文件：assign 之后模型也成了半精度，抄的还是单精度"] = (halved, model.tok_emb.weight.dtype) == (torch.float16, torch.float32)

    before = hashlib.sha256((folder / "weights.pth").read_bytes()).digest()
    model, _ = meta(config, folder, mmap=True)
    with torch.no_grad():
        model.tok_emb.weight.add_(1)  # 改了映射的权重：改的是自己的一份，文件不变（写时复制）
    found["映射的权重可以接着训练：改的是内存里的，文件一个字节没变"] = before == hashlib.sha256((folder / "weights.pth").read_bytes()).digest()
    return found


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def draw(results, weights, path):
    """左图：内存，自己的和映射的；右图：时间，装和第一次前向。

    参数:
        results (dict): 写法 → 几次 measure 的结果
        weights (float): 一份权重多少 MB
        path (Path): 图片写到哪里
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 3.8), layout="constrained", sharey=True)
    rows = range(len(results))
    middle = {key: [statistics.median(one[key] or 0 for one in each) for each in results.values()] for key in ("load", "forward", "peak", "own")}
    left.barh(rows, middle["peak"], color="tab:blue", alpha=0.3, label="映射的文件，随时可收回")
    left.barh(rows, middle["own"], color="tab:blue", label="进程自己的")
    for share in (1, 2):
        left.axvline(share * weights, color="0.4", linestyle=":", linewidth=1)
    left.set_yticks(rows, list(results))
    left.invert_yaxis()
    left.set_xlabel("装权重时内存的峰值（MB；虚线：一份、两份权重）")
    left.legend(fontsize=8)
    right.barh(rows, middle["load"], color="tab:orange", label="装权重")
    right.barh(rows, middle["forward"], left=middle["load"], color="tab:green", label="第一次前向")
    for row, each in zip(rows, results.values()):
        right.scatter([one["load"] for one in each], [row] * len(each), color="black", s=10, zorder=3)
    right.set_xlabel("CPU 时间（秒；黑点：每次装权重）")
    right.legend(fontsize=8)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def run(size, quick):
    """写好文件，每种写法在新的进程里轮流量，画图，自查。

    参数:
        size (str): CONFIGS 里的名字
        quick (bool): True 时只量一次
    """
    OUTPUTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=OUTPUTS, prefix="load_weights_") as name:  # 不放 /tmp：有的系统上它就是内存
        folder = Path(name)
        weights, digest = write_weights(size, folder)
        print(f"模型　{size}，随机的权重，一份 {weights:.0f} MB；文件刚写好，还在系统的缓存里，量的不是硬盘", flush=True)
        results = {way: [] for way in WAYS}
        for _ in range(1 if quick else ROUNDS):  # 轮流量
            for way in WAYS:
                results[way].append(fresh("--measure", way, "--size", size, "--folder", folder))
        found = traps(folder)

    print(f"\n各量 {len(results['meta'])} 次，中位数（最小到最大）；内存都是比装之前多的，括号里是几份权重")
    middle = {way: {key: statistics.median([one[key] for one in each]) if each[0][key] is not None else None for key in ("peak", "own", "load", "forward")} for way, each in results.items()}
    for way, each in results.items():
        mid, loads = middle[way], [one["load"] for one in each]
        memory = "峰值" + "量不了" if mid["peak"] is None else f"峰值 {mid['peak']:5.0f} MB"
        memory += "" if mid["own"] is None else f"　自己的 {mid['own']:5.0f} MB（{mid['own'] / weights:.1f} 份）"
        print(f"　{memory}　装 {mid['load']:.2f} 秒（{min(loads):.2f} 到 {max(loads):.2f}）　第一次前向 {mid['forward']:.2f} 秒　{way}")
    firsts = [one for each in results.values() for one in each]
    print(f"　没有算在里面的：meta 设备第一次用，要 {statistics.median(one['first'] for one in firsts):.2f} 秒" + ("" if firsts[0]["first_own"] is None else f"、{statistics.median(one['first_own'] for one in firsts):.0f} MB") + "，与模型多大无关")
    slow, fast = [one["load"] for one in results["书上的写法"]], [one["load"] for one in results["meta + mmap"]]
    if quick:
        print("　模型小，只量了一次：看流程，不下结论")
    elif min(slow) > max(fast):
        print(f"　书上的写法装得最快的一次，也比 meta + mmap 最慢的一次慢 {min(slow) / max(fast):.1f} 倍；多出来的是随机初始化和抄")
    picture = OUTPUTS / f"load_weights{'_quick' * quick}.png"
    draw(results, weights, picture)
    print(f"图片已写到 {picture}")

    print("\n这个数字对吗？")
    digests = {one["digest"] for each in results.values() for one in each}
    confirm(f"{len(WAYS)} 种写法装出来的模型，logits 逐位相同", digests == {digest}, "有一种没有装上，或装错了地方")
    if middle["meta"]["own"] is not None and not quick:
        own = {way: mid["own"] / weights for way, mid in middle.items()}
        confirm(f"书上的写法，自己的内存是两份（{own['书上的写法']:.2f}）", 1.9 < own["书上的写法"] < 2.2, "状态字典提前放掉了")
        single = [own[way] for way in ("mmap", "meta", "一层一层地抄")]
        confirm(f"mmap、meta、一层一层地抄，是一份（{min(single):.2f} 到 {max(single):.2f}）", 0.9 < min(single) and max(single) < 1.2, "多抄了一份")
        lazy = [own[way] for way in ("meta + mmap", "meta + safetensors")]
        confirm(f"meta 加映射，不到一成（{max(lazy):.2f}）", max(lazy) < 0.1, "文件读进来了，或模型没有建在 meta 上")
    for claim, ok in found.items():
        confirm(claim, ok, "PyTorch 换了版本，规则变了")


def main():
    """六种装权重的写法，各在新的进程里量。"""
    parser = argparse.ArgumentParser(description="实验　装权重：内存占几份，要多久")
    parser.add_argument("--size", choices=CONFIGS, default="124M", help="多大的模型（默认：124M）")
    parser.add_argument("--quick", action="store_true", help="用 tiny，只量一次：看流程，不下结论")
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)  # 这两个给 fresh 用：只装一次，印出内存和时间
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    try:
        if args.measure:
            print(json.dumps(measure(args.measure, args.size, args.folder)))
        else:
            run("tiny" if args.quick else args.size, args.quick)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
