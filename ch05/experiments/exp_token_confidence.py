"""第 5 章 · 实验　模型写每个词元时有多大把握？

问题：　模型给关键的那个词的概率，分得出它答对了还是答错了吗？
先猜：　问 SmolLM2 法国的首都、23 + 45，答案的概率各是多少？有没有错得很有把握的？（先想 10 秒，再运行）
看点：　① 每一类的题从最有把握的排到最没有把握的，✓ 是不是都在前面；② 一对一错：随便拿一道答对的、一道答错的，概率更高的是对的那道吗
        （瞎猜是 50%）；③ 错得最有把握的那几道；④ --ask：哪些词元有颜色，它差一点写成什么。
动手改：1. 把 choose 里的 before < top_p 改成 before + ordered < top_p，加 --quick 运行：越过 top-p 的那一个也要留下，不然可能一个也不剩，自查变成 ✗。
        2. 把 stream_pieces 里的 min(same, len(ids) - 1) 改成 min(len(known), len(ids) - 1)，加 --quick 运行：缓存里还是上一个问题，自查变成 ✗。
        3. 把 concordance 里的 (p > q) + (p == q) / 2 改成 p >= q，加 --quick 运行：概率全都一样、什么也分不出的题，也成了 100%，自查变成 ✗。

运行：
    python ch05/experiments/exp_token_confidence.py                     # 默认用 SmolLM2（exp_real_llm.py 转换好的），没有就用 gpt_mini.pth；图片写到 ch05/outputs/
    python ch05/experiments/exp_token_confidence.py --ask "What is the capital of Australia?"
    python ch05/experiments/exp_token_confidence.py --model ch05/outputs/gpt_mini.pth   # 本项目的任何检查点：第 5 章的、第 7 章微调过的
    约 30 秒，1.0 GB（2 核 CPU）；在网页里聊，见 exp_chat_page.py

形状记号：b 批大小　t 这次送进去几个词元　s 一共看得见几个　d 嵌入维度　h 头数　g 键和值有几份　k 每个头的维度　V 词表大小
"""

import argparse
import codecs
import math
import os
import random
import re
import sys
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import tiktoken
import torch
import torch.nn as nn

SMOLLM2 = Path(__file__).resolve().parent.parent / "outputs" / "smollm2-135M.pth"
KINDS = {"chat": "多轮对话", "instruct": "一问一答：第 7 章的指令格式，它看不见前面的话", "text": "接着写：没有学过对话，只会顺着你的话往下写"}
# 改这里
RUNNERS = 5  # 没有选上的，列出概率最大的几个
CONTEXT = 2048  # 一段对话最多几个词元：再长，SmolLM2 在 CPU 上读一遍要等很久
CHUNK = 256  # 提示词一次送进去几个：长的分几段送，中间才停得下来
MAX_NEW_TOKENS = 128  # --ask 最多写几个
COLORS = [(0.9, ""), (0.5, "30;43"), (0.0, "97;41")]  # 概率从多少起涂什么底色：九成以上不涂，一半以上黄的，再低红的
CAPITALS = {"France": "Paris", "Japan": "Tokyo", "Italy": "Rome", "Germany": "Berlin", "Egypt": "Cairo", "Russia": "Moscow", "Greece": "Athens",
            "Australia": "Canberra", "Canada": "Ottawa", "Turkey": "Ankara", "Switzerland": "Bern", "Pakistan": "Islamabad", "Nigeria": "Abuja", "Kenya": "Nairobi",
            "Morocco": "Rabat", "Vietnam": "Hanoi", "Norway": "Oslo", "Finland": "Helsinki", "Kazakhstan": "Astana", "Mongolia": "Ulaanbaatar"}  # fmt: skip
SYMBOLS = {"gold": "Au", "iron": "Fe", "oxygen": "O", "carbon": "C", "silver": "Ag", "sodium": "Na", "potassium": "K", "lead": "Pb", "copper": "Cu", "helium": "He",
           "tin": "Sn", "mercury": "Hg", "zinc": "Zn", "calcium": "Ca", "tungsten": "W", "antimony": "Sb", "neon": "Ne", "nitrogen": "N", "chlorine": "Cl", "nickel": "Ni"}  # fmt: skip
SUMS = [(2, 3), (23, 45), (1, 1), (4, 5), (7, 2), (8, 6), (9, 9), (10, 20), (12, 7), (15, 15), (31, 18), (27, 36), (48, 25), (50, 50),
        (67, 89), (76, 57), (99, 2), (100, 37), (123, 456), (248, 375)]  # fmt: skip
# 问题，替它写好的开头，题目 → 该写的词。开头写好了，它接着写的第一个词就是关键的词，答对答错都找得到。
QUESTIONS = {
    "首都": ("What is the capital of {}?", "The capital of {} is", CAPITALS),
    "元素符号": ("What is the chemical symbol for {}?", "The chemical symbol for {} is", SYMBOLS),
    "加法": ("What is {}?", "{} =", {f"{a} + {b}": str(a + b) for a, b in SUMS}),
}


# region 沿用 ch05/experiments/exp_real_llm.py: VOCAB_SIZE, SYSTEM, KVCache, build_tokenizer, encode_chat
VOCAB_SIZE = 49_152


SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


class KVCache:
    """每一层算过的键和值，预先留好整块的地方；length 是已经存了几个词元，改小它就是"退回去"。（详解见 ch05/experiments/exp_real_llm.py）"""

    def __init__(self, cfg, batch_size=1, max_length=None, dtype=torch.float32):
        shape = (cfg["n_layers"], batch_size, cfg["n_kv_groups"], max_length or cfg["context_length"], cfg["emb_dim"] // cfg["n_heads"])
        self.keys, self.values, self.length = torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype), 0

    def update(self, layer, keys, values):
        end = self.length + keys.shape[2]
        if end > self.keys.shape[3]:
            raise ValueError(f"缓存只有 {self.keys.shape[3]} 个位置，放不下 {end} 个词元")
        self.keys[layer, :, :, self.length : end], self.values[layer, :, :, self.length : end] = keys, values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


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


def encode_chat(tokenizer, messages, answer=True):
    """把对话写成模型训练时见过的样子：每句话是 <|im_start|>角色、换行、内容、<|im_end|>、换行。（详解见 ch05/experiments/exp_real_llm.py）"""
    start, end = (tokenizer.encode_single_token(token) for token in ("<|im_start|>", "<|im_end|>"))
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": SYSTEM}, *messages]
    ids = []
    for message in messages:
        text = f"{message['role']}\n{message['content']}"
        ids += [start, *(i for i in tokenizer.encode_ordinary(text) if i < VOCAB_SIZE), end, *tokenizer.encode_ordinary("\n")]
    return ids + [start, *tokenizer.encode_ordinary("assistant\n")] if answer else ids


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


# region 沿用 ch05/experiments/exp_gpt_to_llama.py: RMSNorm, rope_tables
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


def rope_tables(cfg):
    """一个模型的 RoPE 表：cos 和 sin，两个 (t, k)。（详解见 ch05/experiments/exp_gpt_to_llama.py）"""
    return compute_rope_params(cfg["emb_dim"] // cfg["n_heads"], cfg["rope_base"], cfg["context_length"], cfg["rope_freq"])


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


# region 沿用 ch07/main: format_input
def format_input(entry):
    """一条数据 → Alpaca 格式的提示词，到回答之前为止。（详解见 ch07/main/example_01_dataset_and_prompt.py）"""
    instruction_text = (
        f"Below is an instruction that describes a task. "
        f"Write a response that appropriately completes the request."
        f"\n\n### Instruction:\n{entry['instruction']}"
    )
    input_text = f"\n\n### Input:\n{entry['input']}" if entry["input"] else ""
    return instruction_text + input_text


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


# region 改写 ch05/experiments/exp_gpt_to_llama.py: GroupedQueryAttention, TransformerBlock, LlamaModel
class GroupedQueryAttention(nn.Module):
    """Llama 的注意力，带 KV 缓存；同组的头把查询摞在一起，键和值不必抄成 h 份。"""

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

    def forward(self, x, mask, cos, sin, cache=None, layer=0):  # 改：多了缓存，和这是第几层
        b, t, _ = x.shape
        queries = self.W_query(x).view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        keys = self.W_key(x).view(b, t, self.num_kv_groups, self.head_dim).transpose(1, 2)  # (b, g, t, k)
        values = self.W_value(x).view(b, t, self.num_kv_groups, self.head_dim).transpose(1, 2)  # (b, g, t, k)
        queries, keys = apply_rope(queries, cos, sin), apply_rope(keys, cos, sin)  # (b, h, t, k)，(b, g, t, k)
        # 改：存的是转过角度的键。位置 5 的键永远按位置 5 转，存一次就够。
        if cache is not None:
            keys, values = cache.update(layer, keys, values)  # (b, g, s, k)
        # 改：不用 repeat_interleave。同组的 h/g 个头用同一份键，把它们的查询首尾相接，一次矩阵乘法算完。
        queries = queries.reshape(b, self.num_kv_groups, -1, self.head_dim)  # (b, g, h/g·t, k)
        # 改：打分、掩码、softmax、加权都交给 PyTorch 的 SDPA（第 3 章 exp_mha_variants.py）；它的掩码 True 是"可以看"，与书上相反。
        context = nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)  # (b, g, h/g·t, k)
        context = context.view(b, self.num_heads, t, self.head_dim).transpose(1, 2).reshape(b, t, self.d_out)  # (b, t, d_out)　改：摞起来的先拆回 h 个头
        return self.out_proj(context)


class TransformerBlock(nn.Module):
    """Llama 的 Transformer 块。"""

    def __init__(self, cfg):
        super().__init__()
        self.att = GroupedQueryAttention(cfg["emb_dim"], cfg["emb_dim"], cfg["n_heads"], cfg["n_kv_groups"])
        self.ff = FeedForward(cfg)
        self.norm1 = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])
        self.norm2 = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])

    def forward(self, x, mask, cos, sin, cache=None, layer=0):  # 改：缓存交给注意力
        x = x + self.att(self.norm1(x), mask, cos, sin, cache, layer)  # 改：同上；(b, t, d)
        return x + self.ff(self.norm2(x))


class LlamaModel(nn.Module):
    """Llama，带 KV 缓存。"""

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

    def forward(self, in_idx, cache=None, last_only=False):  # 改：缓存；last_only=True 只要最后一个位置的 logits
        t = in_idx.shape[1]
        start = cache.length if cache is not None else 0  # 改：前面已经有几个词元
        if start + t > len(self.cos):  # 改：连同缓存里的一起算
            raise ValueError(f"输入有 {start + t} 个词元，超过了模型的上下文长度 {len(self.cos)}")  # 改：同上
        mask = None  # 改：只送进来一个词元时，前面的全都可以看，不用掩码
        if t > 1:  # 改：第 i 个能看到 start + i 为止；同组的 h/g 个头摞在一起，掩码也摞 h/g 份
            mask = torch.ones(t, start + t, dtype=torch.bool, device=in_idx.device).tril(start)  # 改：(t, s)
            mask = mask.repeat(self.cfg["n_heads"] // self.cfg["n_kv_groups"], 1)  # 改：(h/g·t, s)
        x = self.tok_emb(in_idx)  # (b, t, d)
        for layer, block in enumerate(self.trf_blocks):  # 改：告诉缓存是第几层
            x = block(x, mask, self.cos[start:], self.sin[start:], cache, layer)  # 改：角度从 start 起；(b, t, d)
        if cache is not None:  # 改：每一层都存好了，才算真的多了 t 个
            cache.length += t  # 改：同上
        if last_only:  # 改：输出层有 2,800 万个数，提问里前面的位置用不着它
            x = x[:, -1:]  # 改：(b, 1, d)
        return self.out_head(self.final_norm(x))  # (b, n, V)　n 是 t；last_only 时是 1


# endregion


# region 改写 ch03/main: MultiHeadAttention
class MultiHeadAttention(nn.Module):
    """GPT 的注意力，带 KV 缓存。（原版详解见 ch03/main/example_05_multihead_attention.py）"""

    def __init__(self, d_in, d_out, num_heads, qkv_bias=False):  # 改：聊天不训练，不要 dropout；掩码现算，不要 context_length
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
        # 改：没有 dropout 和 mask

    def forward(self, x, cache, layer):  # 改：多了缓存，和这是第几层
        b, t, _ = x.shape
        queries = self.W_query(x)  # (b, t, d_out)
        keys = self.W_key(x)  # (b, t, d_out)
        values = self.W_value(x)  # (b, t, d_out)
        queries = queries.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        keys = keys.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        values = values.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        keys, values = cache.update(layer, keys, values)  # (b, h, s, k)　改：旧词元的从缓存里取
        scores = queries @ keys.transpose(2, 3)  # (b, h, t, s)
        future = torch.ones(scores.shape[2:], dtype=torch.bool).triu(scores.shape[3] - t + 1)  # (t, s)　改：前面还有 s − t 个旧的，都看得见
        scores.masked_fill_(future, -torch.inf)  # 改：同上
        weights = torch.softmax(scores / self.head_dim**0.5, dim=-1)  # (b, h, t, s)
        # 改：没有 dropout
        context = (weights @ values).transpose(1, 2)  # (b, t, h, k)
        context = context.contiguous().view(b, t, self.d_out)  # (b, t, d_out)
        return self.out_proj(context)


# endregion


# region 改写 ch04/main: GPTModel
class GPTBlock(nn.Module):
    """书上的 TransformerBlock，把缓存转交给注意力。"""

    # 改：换了名字，免得与上面 Llama 的相撞；前馈网络写在里面，参数的名字与书上相同（ff.layers.0…）；没有 dropout
    def __init__(self, cfg):
        super().__init__()
        d = cfg["emb_dim"]
        self.att = MultiHeadAttention(d, d, cfg["n_heads"], cfg["qkv_bias"])
        self.ff = nn.ModuleDict({"layers": nn.Sequential(nn.Linear(d, 4 * d), GELU(), nn.Linear(4 * d, d))})
        self.norm1, self.norm2 = LayerNorm(d), LayerNorm(d)

    def forward(self, x, cache, layer):
        x = x + self.att(self.norm1(x), cache, layer)  # (b, t, d)
        return x + self.ff["layers"](self.norm2(x))


class GPTModel(nn.Module):
    """GPT，带 KV 缓存；用法与上面的 LlamaModel 相同。（原版详解见 ch04/main/example_06_gpt_model.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg | {"n_kv_groups": cfg["n_heads"]}  # 改：KVCache 要知道键和值有几份
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.trf_blocks = nn.ModuleList([GPTBlock(cfg) for _ in range(cfg["n_layers"])])  # 改：要告诉每一块它是第几层；没有 dropout
        self.final_norm = LayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)

    def forward(self, in_idx, cache, last_only=False):  # 改：缓存；last_only=True 只要最后一个位置的 logits
        t = in_idx.shape[1]
        if cache.length + t > self.pos_emb.num_embeddings:  # 改：连缓存里的一起数
            raise ValueError(f"输入有 {cache.length + t} 个词元，超过了模型的上下文长度 {self.pos_emb.num_embeddings}")  # 改：同上
        tok_embeds = self.tok_emb(in_idx)  # (b, t, d)
        pos_embeds = self.pos_emb(torch.arange(cache.length, cache.length + t, device=in_idx.device))  # (t, d)　改：接着旧的数
        x = tok_embeds + pos_embeds  # (b, t, d)
        for layer, block in enumerate(self.trf_blocks):  # 改：同上，没有 dropout
            x = block(x, cache, layer)  # (b, t, d)
        cache.length += t  # 改：每一层都存好了，才算真的多了 t 个
        x = self.final_norm(x[:, -1:] if last_only else x)  # 改：只要最后一个时，别的不必归一化
        return self.out_head(x)  # (b, t, V) 或 (b, 1, V)


# endregion


def load(path):
    """装上一个检查点：SmolLM2，或本项目存的 {"config", "model"}，由里面的内容认出来。

    参数:
        path (Path): 文件

    返回:
        SimpleNamespace: name、model、tokenizer、kind（KINDS 里的一种）、limit（最多看几个词元）、eos_id（写到它就停）

    异常:
        ValueError: 没有这个文件、读不出来、不会说话，或里面有 nan
    """
    if not path.is_file():
        raise ValueError(f"没有这个文件：{path}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # 映射：用到哪里才读到哪里
        config, state = checkpoint["config"], {name: value for name, value in checkpoint["model"].items() if not name.endswith("att.mask")}
        llama, classes = "tokens" in checkpoint, len(state["out_head.weight"])  # SmolLM2 的词表在文件里
        if classes == config["vocab_size"]:
            with torch.device("meta"):  # 先建一个只有形状的，不花时间随机初始化
                model = (LlamaModel if llama else GPTModel)(config)
            model.load_state_dict(state, assign=True)
    except Exception:  # 坏文件、别的文件，能引出各种异常
        raise ValueError(f"{path} 读不出来：要本项目存的检查点，里面有 config 和 model") from None
    if classes != config["vocab_size"]:
        raise ValueError(f"{path} 的输出层只分 {classes} 类，是第 6 章的分类器，不会说话：换一个第 5 章或第 7 章的检查点")
    if bad := [name for name, value in state.items() if not value.isfinite().all()]:
        raise ValueError(f"{path} 里的 {bad[0]} 有 nan 或 inf，写出来的都是乱码：换一个检查点")
    if llama:
        model.out_head.weight = model.tok_emb.weight  # 权重共享
        model.cos, model.sin = rope_tables(config)  # 表不在文件里
        tokenizer = build_tokenizer(checkpoint["tokens"])
        kind, eos_id = "chat", tokenizer.encode_single_token("<|im_end|>")
    else:
        os.environ["TIKTOKEN_CACHE_DIR"] = str(find_data("tiktoken"))  # GPT-2 的词表由 setup/run.sh 放好，不联网
        # 检查点里没有写它是怎样训练的，只有文件名看得出来：第 7 章存的都带 sft（监督微调，supervised finetuning）。
        tokenizer, kind, eos_id = tiktoken.get_encoding("gpt2"), "instruct" if "sft" in path.stem else "text", 50256
    return SimpleNamespace(name=path.name, model=model.eval(), tokenizer=tokenizer, kind=kind, limit=min(config["context_length"], CONTEXT), eos_id=eos_id)


class State:
    """一段对话写到哪里了：缓存、缓存里是哪些词元、要不要停。丢了也只是重算一遍。

    参数:
        talker (SimpleNamespace): load 的结果
    """

    def __init__(self, talker):
        self.ids, self.cache = [], KVCache(talker.model.cfg, max_length=talker.limit, dtype=talker.model.tok_emb.weight.dtype)
        self.stop = False  # 别处改成 True，就写到这里为止（exp_chat_page.py 的「停」）


def encode(talker, messages, max_new_tokens):
    """把对话写成这个模型见过的样子。

    参数:
        talker (SimpleNamespace): load 的结果
        messages (list[dict]): 对话，{"role", "content"}，最后一句是用户的
        max_new_tokens (int): 给回答留几个词元

    返回:
        tuple[list[int], str]: 词元编号；要告诉用户的话，没有就是空的

    异常:
        ValueError: 最后一句太长
    """
    encode_text, limit, count = talker.tokenizer.encode_ordinary, talker.limit, len(messages)  # 用户写 <|endoftext|>，也只是普通的字
    if talker.kind == "text":  # 新的话另起一行，模型的话紧接在后面
        ids = [i for n, message in enumerate(messages) for i in encode_text(("\n" if n and message["role"] == "user" else "") + message["content"])]
        return ids, f"太长，只看最后 {limit // 2} 个词元" if len(ids) >= limit else ""
    if talker.kind == "instruct":
        ids = encode_text(format_input({"instruction": messages[-1]["content"], "input": ""}) + "\n\n### Response:\n")
    while talker.kind == "chat":
        ids = encode_chat(talker.tokenizer, messages)
        if len(messages) <= 2 or len(ids) + max_new_tokens <= limit:
            break
        messages = messages[2:]  # 放不下：最早的一问一答不给它看了
    if len(ids) >= limit:
        raise ValueError(f"这句话太长：写成提示词有 {len(ids)} 个词元，这个模型最多看 {limit} 个")
    return ids, f"最早的 {count - len(messages)} 句放不下，它看不见了" if len(messages) < count else ""


def choose(logits, temperature, top_k, top_p):
    """选下一个词元：温度，top-k，再 top-p（核采样，nucleus sampling）。

    参数:
        logits (Tensor): (V,)
        temperature (float): 0 是贪心
        top_k (int): 只留最大的几个；0 表示不限
        top_p (float): 从大到小加起来刚超过它为止，后面的不要；1 表示不限

    返回:
        tuple[int, Tensor]: 选中的词元；温度为 1、什么也不去掉时的概率 (V,)，显示的总是它：模型自己有多大把握，与采样的设置无关
    """
    logits = logits.float() - logits.max()  # (V,)　减去最大的：温度再小也不会溢出
    probs = torch.softmax(logits, dim=-1)  # (V,)
    if temperature == 0:
        return logits.argmax().item(), probs
    ordered, index = torch.softmax(logits / temperature, dim=-1).sort(descending=True)  # 两个 (V,)
    if top_k:
        ordered[top_k:] = 0
        ordered /= ordered.sum()
    if top_p < 1:  # 等于 1 时不能比：几万个小数加起来，末位不准，会误伤尾巴
        before = ordered.cumsum(dim=-1) - ordered  # (V,)　排在它前面的加起来
        ordered[~(before < top_p)] = 0
    return index[torch.multinomial(ordered, 1)].item(), probs


@torch.no_grad()
def stream_pieces(talker, state, ids, max_new_tokens, temperature, top_k, top_p):
    """写回答，每写一个词元交出一次到现在为止的全部。

    一个汉字有 3 个字节，常常分在两三个词元里：字节到齐了才成一片，片里记着这几个词元。

    参数:
        talker (SimpleNamespace): load 的结果
        state (State): 写到哪里了
        ids (list[int]): 提示词
        max_new_tokens (int): 最多写几个
        temperature, top_k, top_p (float, int, float): 采样的设置，见 choose

    返回:
        Iterator[list]: 每片是文字和它的词元，每个词元三样：名字、概率、没有选上的（名字和概率）；是同一个列表，越来越长
    """
    model, tokenizer, limit, ids = talker.model, talker.tokenizer, talker.limit, list(ids)
    decoder, pieces, waiting = codecs.getincrementaldecoder("utf-8")("replace"), [], []
    known = state.ids[: state.cache.length]
    same = next((i for i, (a, b) in enumerate(zip(known, ids)) if a != b), min(len(known), len(ids)))  # 开头相同的，缓存里有，不用重算
    state.cache.length = min(same, len(ids) - 1)  # 至少留一个要算：没有输入，就没有 logits
    state.ids = ids  # 下面往 ids 里加，缓存也跟着加，两边总对得上
    for _ in range(max_new_tokens):
        if len(ids) >= limit:
            if talker.kind != "text":
                break
            # 满了。位置编码是绝对的，窗口挪一格，缓存就全部作废（ch04 的 exp_kv_cache.py）：不如一次忘掉一半，少重算几次。
            del ids[: -(limit // 2)]
            state.cache.length = 0
        for part in torch.tensor([ids[state.cache.length :]]).split(CHUNK, dim=1):
            if not state.stop:
                logits = model(part, state.cache, last_only=True)[0, -1]  # (V,)
        if state.stop:
            break
        token, probs = choose(logits, temperature, top_k, top_p)
        if token == talker.eos_id:
            break
        ids.append(token)
        top = [(probs[i].item(), i) for i in probs.topk(RUNNERS + 1).indices.tolist()]
        others = [[spell(tokenizer, i), p] for p, i in top if i != token][:RUNNERS]
        waiting.append([spell(tokenizer, token), probs[token].item(), others])
        if text := decoder.decode(tokenizer.decode_single_token_bytes(token)):
            pieces.append([text, waiting])
            waiting = []
        yield pieces
    if waiting:  # 停在一个字的中间
        pieces.append([decoder.decode(b"", final=True), waiting])
    yield pieces


def spell(tokenizer, token):
    """一个词元写成看得见的样子：空格是 ␣，换行是 ⏎，半个字写它的字节。"""
    return tokenizer.decode_single_token_bytes(token).decode("utf-8", "backslashreplace").replace(" ", "␣").replace("\n", "⏎")


def first_word(talker, state, question, opening):
    """替它写好回答的开头，看它接着写的第一个词。

    参数:
        talker (SimpleNamespace): load 的结果
        state (State): 写到哪里了；几道题用同一个，相同的开头只算一遍
        question (str): 问题
        opening (str): 回答的开头

    返回:
        tuple[str, float]: 词，和它的几个词元的概率乘起来；没有写出词，就是空的和 0
    """
    ids, _ = encode(talker, [{"role": "user", "content": question}], MAX_NEW_TOKENS)
    ids += talker.tokenizer.encode_ordinary(("\n" if talker.kind == "text" else "") + opening)
    for pieces in stream_pieces(talker, state, ids, 12, 0.0, 0, 1.0):
        word = re.search(r"\w+", text := "".join(text for text, _ in pieces))
        if word and word.end() < len(text):  # 后面有了别的字，才算写完：Can 后面还有 berra
            break
    if not word:
        return "", 0.0
    p, end = 1.0, 0
    for text, tokens in pieces:
        start, end = end, end + len(text)
        if start < word.end() and word.start() < end:  # 词前面单独的空格、引号不算
            p *= math.prod(p for _, p, _ in tokens)
    return word[0], p


def exam(talker, per_kind):
    """考一遍；每一类从最有把握的排到最没有把握的，印出来。

    参数:
        talker (SimpleNamespace): load 的结果
        per_kind (int): 每类最多几道

    返回:
        list[tuple]: 每道题的类别、题目、写的词、概率、对错
    """
    rows, state = [], State(talker)
    for kind, (question, opening, answers) in QUESTIONS.items():
        mine = []
        for thing, wanted in list(answers.items())[:per_kind]:
            word, p = first_word(talker, state, question.format(thing), opening.format(thing))
            mine.append((kind, thing, word, p, word.lower() == wanted.lower()))
        mine.sort(key=lambda row: -row[3])
        print(f"{kind}　答对 {sum(row[4] for row in mine)} / {len(mine)}")
        cells = [f"{'✓' if right else '✗'} {p:4.0%} {thing} → {word}" for _, thing, word, p, right in mine]
        for i in range(0, len(cells), 4):
            print("  " + "".join(f"{cell:<32}" for cell in cells[i : i + 4]).rstrip())
        rows += mine
    return rows


def concordance(rows):
    """随便拿同一类里的一道答对的、一道答错的，概率更高的是对的那道：占几成。

    参数:
        rows (list[tuple]): exam 的结果

    返回:
        float: 0.5 是分不出，1 是完全分得开；没有这样的两道，是 nan
    """
    pairs = [(a[3], b[3]) for a in rows for b in rows if a[0] == b[0] and a[4] and not b[4]]  # 只在同一类里比：不然首都容易、加法难也混进来
    return sum((p > q) + (p == q) / 2 for p, q in pairs) / len(pairs) if pairs else math.nan


def report(rows, quick):
    """概率分得出对错吗：数一数，再与打乱对错的比。

    参数:
        rows (list[tuple]): exam 的结果
        quick (bool): True 时不下结论
    """
    groups = {kind: [row for row in rows if row[0] == kind] for kind in QUESTIONS}
    each, together = "　".join(f"{kind} {concordance(mine):.0%}".replace("nan%", "比不了") for kind, mine in groups.items()), concordance(rows)
    sure, wrong = [row for row in rows if row[3] > 0.5], sorted((row for row in rows if not row[4]), key=lambda row: -row[3])
    print(f"\n关键的词的概率，分得出对错吗？\n  平均概率 {sum(row[3] for row in rows) / len(rows):.0%}，真的答对 {1 - len(wrong) / len(rows):.0%}")
    print(f"  概率过半的 {len(sure)} 道，对了 {sum(row[4] for row in sure)} 道；不到一半的 {len(rows) - len(sure)} 道，对了 {sum(row[4] for row in rows if row not in sure)} 道")
    print("  错得最有把握的　" + "　".join(f"{thing} → {word} {p:.0%}" for _, thing, word, p, _ in wrong[:3]))
    if quick or math.isnan(together):
        print("  --quick 只看流程，不下结论" if quick else "  每一类都全对或全错，一对一错比不了：换些更难或更容易的题")
        return
    print(f"  同一类里一对一错，对的概率更高：{together:.0%}（{each}）")
    mix = lambda mine: [(*row[:4], right) for row, right in zip(mine, random.sample([row[4] for row in mine], len(mine)))]  # noqa: E731　每一类的对错打乱
    lucky = sum(concordance([row for mine in groups.values() for row in mix(mine)]) >= together for _ in range(1000))
    print(f"  打乱对错 1000 次，有 {lucky} 次也这么高：" + ("概率与对错有关，这几道题上分得出一些" if lucky < 10 else "这么几道题，分不出"))
    print(f"  只有 {len(rows)} 道题（对 {len(rows) - len(wrong)}，错 {len(wrong)}）、三种句式，开头还是替它写的：换一批题，这些数会变")


def draw(rows):
    """一道题一个点：横着是概率，绿的答对，红的答错。

    参数:
        rows (list[tuple]): exam 的结果
    """
    import matplotlib.pyplot as plt
    import zhplot  # noqa: F401　导入它，图上就能写中文

    figure, axes = plt.subplots(figsize=(9, 3.6), layout="constrained")
    for right, color, shape, label in ((True, "C2", "o", "答对"), (False, "C3", "x", "答错")):
        mine = [row for row in rows if row[4] == right]
        heights = [list(QUESTIONS).index(row[0]) + (0.12 if right else -0.12) for row in mine]  # 错开一点，不叠在一起
        axes.scatter([row[3] for row in mine], heights, color=color, marker=shape, alpha=0.7, label=label)
    axes.set(yticks=range(len(QUESTIONS)), yticklabels=list(QUESTIONS), xlim=(-0.02, 1.02), xlabel="关键的词的概率", ylabel="哪一类题", title="答对的、答错的，概率差得远吗？")
    figure.legend(loc="outside right center")
    (path := SMOLLM2.with_name("token_confidence.png")).parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    print(f"图片已写到 {path}")


def paint(text, p, color):
    """一片文字，按概率涂上底色。

    参数:
        text (str): 文字；控制字符换成 �，不然模型写出一个 ESC，终端就听它的了
        p (float): 概率
        color (bool): False 时不涂

    返回:
        str: 可以直接印到终端
    """
    text = "".join(char if unicodedata.category(char) != "Cc" or char in "\n\t" else "�" for char in text)
    code = next(code for least, code in COLORS if p >= least)
    return f"\033[{code}m{text}\033[0m" if color and code else text


def ask(talker, question):
    """--ask：边写边印，再列出最没有把握的几个词元。

    参数:
        talker (SimpleNamespace): load 的结果
        question (str): 问题
    """
    shown, color = 0, sys.stdout.isatty() and not os.environ.get("NO_COLOR")  # 存进文件、交给别的程序时，不要颜色
    ids, note = encode(talker, [{"role": "user", "content": question}], MAX_NEW_TOKENS)
    print(note or f"{talker.name}　{KINDS[talker.kind]}", file=sys.stderr)
    for pieces in stream_pieces(talker, State(talker), ids, MAX_NEW_TOKENS, 0.0, 0, 1.0):
        for text, tokens in pieces[shown:]:
            print(paint(text, math.prod(p for _, p, _ in tokens), color), end="", flush=True)
        shown = len(pieces)
    print("\n\n最没有把握的五个词元")
    for name, p, others in sorted((token for _, tokens in pieces for token in tokens), key=lambda token: token[1])[:5]:
        print(paint(f"  {p:5.1%}　选了「{name}」　没选　" + "　".join(f"「{other}」{q:.1%}" for other, q in others[:3]), 1.0, False))


@torch.no_grad()
def check(talker):
    """自查：概率、采样、缓存、比法。

    参数:
        talker (SimpleNamespace): load 的结果
    """
    print("\n这个数字对吗？")
    state = State(talker)
    ids, other = (encode(talker, [{"role": "user", "content": text}], 9)[0] for text in ("What is the capital of France?", "What is 23 + 45?"))
    *_, pieces = stream_pieces(talker, state, ids, 9, 0.0, 0, 1.0)
    tokens = [token for _, tokens in pieces for token in tokens]
    confirm("贪心：每个词元的概率，都不比没选上的小", all(p >= q for _, p, others in tokens for _, q in others), "没选上的里面混进了别的位置的概率")
    probs = talker.model(torch.tensor([state.ids]), State(talker).cache)[0].float().softmax(dim=-1)  # (t, V)
    once = [probs[i - 1, state.ids[i]].item() for i in range(len(ids), len(state.ids))]
    confirm("一个一个写的，与整段一次算的，概率都相同", all(abs(p - q) < 1e-4 for (_, p, _), q in zip(tokens, once)), "概率取错了位置")
    drawn = {choose(torch.tensor([0.5, 0.3, 0.2]).log(), 1.0, 0, 0.6)[0] for _ in range(50)}
    confirm("概率 0.5、0.3、0.2，top-p = 0.6：留下前两个", drawn == {0, 1}, "越过 top-p 的那一个没有留下")
    first = [next(stream_pieces(talker, each, other, 1, 0.0, 0, 1.0))[0][1][0][1] for each in (state, State(talker))]  # 第一个词元的概率
    confirm("换一句话问，缓存里有没有上一句，概率都相同", abs(first[0] - first[1]) < 1e-4, "缓存没有退回到两句话相同的地方")
    same, apart = [("", "", "", 0.5, right) for right in (True, False)], [("", "", "", p, p > 0.5) for p in (0.9, 0.2)]
    confirm("一对一错：概率一样是 50%，对的高是 100%", (concordance(same), concordance(apart)) == (0.5, 1), "打平的要算一半")


def main():
    """考 60 道题，画图，自查；--ask 只问一句。"""
    parser = argparse.ArgumentParser(description="实验　模型写每个词元时有多大把握？")
    parser.add_argument("--ask", metavar="问题", help="问一句，按把握涂上底色印出来，答完就退出")
    parser.add_argument("--model", type=Path, help="哪个检查点；默认是 SmolLM2，没有就是自己训练的 gpt_mini.pth")
    parser.add_argument("--quick", action="store_true", help="每类只考 3 道")
    args = parser.parse_args()
    try:
        if args.ask is not None and not args.ask.strip():
            raise ValueError("--ask 后面要有问题")
        talker = load(args.model or (SMOLLM2 if SMOLLM2.is_file() else find_data("gpt_mini.pth")))
        if args.ask is not None:
            return ask(talker, args.ask)
        print(f"{talker.name}　{KINDS[talker.kind]}\n")
        random.seed(123)
        rows = exam(talker, 3 if args.quick else 20)
        report(rows, args.quick)
        draw(rows)
        check(talker)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
