"""第 5 章 · 实验　在网页里和模型聊天：它写每个词元时，有多大把握，差一点写成什么？

问题：　它写每个词元时有多大把握，差一点写成什么？点一下就看得到吗？
先猜：　问 SmolLM2 "What is the capital of France?" 和 "What is 23 + 45?"，答案里哪个词元的颜色最深？（先想 10 秒，再运行）
看点：　① 颜色：越深，模型给这个词元的概率越低；② 指着一个词元（手机上点一下），看概率和没有选上的几个；
        ③ 同一句话按几次「重答」：在颜色深的地方分岔；④ 温度调到 0，每次都一样；调到 2，一片深色，不成话了。
动手改：1. 把 show 里的 html.escape(text) 改成 text，加 --quick 运行：别人写的 HTML 成了网页的一部分，自查变成 ✗。
        2. 在 reply 的 try: 下面加一行 window.stop = False，加 --quick 运行：收下一句话、还没有开始写，这时按的停就丢了，自查变成 ✗。
        3. 把 accept 里的 if self.lock.locked() 改成 if False，加 --quick 运行：正在写的时候又收下一句，按过的停也跟着忘了，自查变成 ✗。

运行：
    python ch05/experiments/exp_chat_page.py                                     # 先 pip install -r setup/requirements-ui.txt；浏览器打开它印出的地址
    python ch05/experiments/exp_chat_page.py --model ch05/outputs/gpt_mini.pth   # 本项目的任何检查点：第 5 章的、第 7 章微调过的
    python ch05/experiments/exp_chat_page.py --quick                             # 不开网页，问一句，自查；用不着 gradio
    --quick 约 5 秒，1.0 GB（2 核 CPU）

怎样选词元、算概率，见 exp_token_confidence.py；概率分得出对错吗，也在那里。
网页只有这台电脑打得开（127.0.0.1），不联网，不记录。对话存在浏览器的这个窗口里：刷新还在，关了就没了；几个窗口各聊各的。

形状记号：b 批大小　t 这次送进去几个词元　s 一共看得见几个　d 嵌入维度　h 头数　g 键和值有几份　k 每个头的维度　V 词表大小
"""

import argparse
import codecs
import html
import json
import os
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import tiktoken
import torch
import torch.nn as nn

# 改这里
TEMPERATURE, TOP_K, TOP_P, MAX_NEW_TOKENS = 0.2, 0, 0.9, 128  # 网页打开时的采样设置，温度和 top-p 是 SmolLM2 的作者建议的；TOP_K 是 0 表示不限
BUSY = "还在写上一个回答：先按「停」"


# region 沿用 ch05/experiments/exp_real_llm.py: VOCAB_SIZE, SYSTEM, KVCache, build_tokenizer, encode_chat
VOCAB_SIZE = 49_152


SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


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


# region 沿用 ch04/main: LayerNorm, GELU
class LayerNorm(nn.Module):
    """层归一化（layer normalization）：把每个词元的 d 个数调成均值 0、方差 1，再学着缩放和平移。（详解见 ch04/main/example_02_layernorm.py）"""

    def __init__(self, emb_dim):
        super().__init__()
        self.eps = 1e-5
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x):
        mean = x.mean(dim=-1, keepdim=True)  # (…, 1)
        var = x.var(dim=-1, keepdim=True, unbiased=False)  # (…, 1)
        norm_x = (x - mean) / torch.sqrt(var + self.eps)  # (…, d)
        return self.scale * norm_x + self.shift


class GELU(nn.Module):
    """GELU 激活函数：像 ReLU，但拐弯是圆滑的。（详解见 ch04/main/example_03_feedforward.py）"""

    def forward(self, x):
        return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


# endregion


# region 沿用 ch07/main: format_input
def format_input(entry):
    """一条数据 → Alpaca 格式的提示词，到回答之前为止。（详解见 ch07/main/example_01_dataset_and_prompt.py）"""
    instruction_text = (
        f"Below is an instruction that describes a task. "
        f"Write a response that appropriately completes the request."
        f"\n\n### Instruction:\n{entry['instruction']}"
    )
    input_text = f"\n\n### Input:\n{entry['input']}" if entry["input"] else ""
    return instruction_text + input_text


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


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


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


# region 改写 ch03/main: MultiHeadAttention
class MultiHeadAttention(nn.Module):
    """GPT 的注意力，带 KV 缓存。（原版详解见 ch03/main/example_05_multihead_attention.py）"""

    def __init__(self, d_in, d_out, num_heads, qkv_bias=False):  # 改：聊天不训练，不要 dropout；掩码现算，不要 context_length
        super().__init__()
        if d_out % num_heads != 0:
            raise ValueError(f"d_out={d_out} 不能被 num_heads={num_heads} 整除，无法平均分给每个头")
        self.d_out = d_out
        self.num_heads = num_heads
        self.head_dim = d_out // num_heads
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.out_proj = nn.Linear(d_out, d_out)
        # 改：没有 dropout 和 mask

    def forward(self, x, cache, layer):  # 改：多了缓存，和这是第几层
        b, t, _ = x.shape
        queries = self.W_query(x)  # (b, t, d_out)
        keys = self.W_key(x)  # (b, t, d_out)
        values = self.W_value(x)  # (b, t, d_out)
        queries = queries.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        keys = keys.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        values = values.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        keys, values = cache.update(layer, keys, values)  # (b, h, s, k)　改：旧词元的从缓存里取
        scores = queries @ keys.transpose(2, 3)  # (b, h, t, s)
        future = torch.ones(scores.shape[2:], dtype=torch.bool).triu(scores.shape[3] - t + 1)  # (t, s)　改：前面还有 s − t 个旧的，都看得见
        scores.masked_fill_(future, -torch.inf)  # 改：同上
        weights = torch.softmax(scores / self.head_dim**0.5, dim=-1)  # (b, h, t, s)
        # 改：没有 dropout
        context = (weights @ values).transpose(1, 2)  # (b, t, h, k)
        context = context.contiguous().view(b, t, self.d_out)  # (b, t, d_out)
        return self.out_proj(context)


# endregion


# region 改写 ch04/main: GPTModel
class GPTBlock(nn.Module):
    """书上的 TransformerBlock，把缓存转交给注意力。"""

    # 改：换了名字，免得与上面 Llama 的相撞；前馈网络写在里面，参数的名字与书上相同（ff.layers.0…）；没有 dropout
    def __init__(self, cfg):
        super().__init__()
        d = cfg["emb_dim"]
        self.att = MultiHeadAttention(d, d, cfg["n_heads"], cfg["qkv_bias"])
        self.ff = nn.ModuleDict({"layers": nn.Sequential(nn.Linear(d, 4 * d), GELU(), nn.Linear(4 * d, d))})
        self.norm1, self.norm2 = LayerNorm(d), LayerNorm(d)

    def forward(self, x, cache, layer):
        x = x + self.att(self.norm1(x), cache, layer)  # (b, t, d)
        return x + self.ff["layers"](self.norm2(x))


class GPTModel(nn.Module):
    """GPT，带 KV 缓存；用法与上面的 LlamaModel 相同。（原版详解见 ch04/main/example_06_gpt_model.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg | {"n_kv_groups": cfg["n_heads"]}  # 改：KVCache 要知道键和值有几份
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.trf_blocks = nn.ModuleList([GPTBlock(cfg) for _ in range(cfg["n_layers"])])  # 改：要告诉每一块它是第几层；没有 dropout
        self.final_norm = LayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)

    def forward(self, in_idx, cache, last_only=False):  # 改：缓存；last_only=True 只要最后一个位置的 logits
        t = in_idx.shape[1]
        if cache.length + t > self.pos_emb.num_embeddings:  # 改：连缓存里的一起数
            raise ValueError(f"输入有 {cache.length + t} 个词元，超过了模型的上下文长度 {self.pos_emb.num_embeddings}")  # 改：同上
        tok_embeds = self.tok_emb(in_idx)  # (b, t, d)
        pos_embeds = self.pos_emb(torch.arange(cache.length, cache.length + t, device=in_idx.device))  # (t, d)　改：接着旧的数
        x = tok_embeds + pos_embeds  # (b, t, d)
        for layer, block in enumerate(self.trf_blocks):  # 改：同上，没有 dropout
            x = block(x, cache, layer)  # (b, t, d)
        cache.length += t  # 改：每一层都存好了，才算真的多了 t 个
        x = self.final_norm(x[:, -1:] if last_only else x)  # 改：只要最后一个时，别的不必归一化
        return self.out_head(x)  # (b, t, V) 或 (b, 1, V)


# endregion


# region 沿用 ch05/experiments/exp_token_confidence.py: SMOLLM2, KINDS, RUNNERS, CONTEXT, CHUNK, load, State, encode, choose, stream_pieces, spell
SMOLLM2 = Path(__file__).resolve().parent.parent / "outputs" / "smollm2-135M.pth"


KINDS = {"chat": "多轮对话", "instruct": "一问一答：第 7 章的指令格式，它看不见前面的话", "text": "接着写：没有学过对话，只会顺着你的话往下写"}


RUNNERS = 5


CONTEXT = 2048


CHUNK = 256


def load(path):
    """装上一个检查点：SmolLM2，或本项目存的 {"config", "model"}，由里面的内容认出来。（详解见 ch05/experiments/exp_token_confidence.py）"""
    if not path.is_file():
        raise ValueError(f"没有这个文件：{path}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        config, state = checkpoint["config"], {name: value for name, value in checkpoint["model"].items() if not name.endswith("att.mask")}
        llama, classes = "tokens" in checkpoint, len(state["out_head.weight"])
        if classes == config["vocab_size"]:
            with torch.device("meta"):
                model = (LlamaModel if llama else GPTModel)(config)
            model.load_state_dict(state, assign=True)
    except Exception:
        raise ValueError(f"{path} 读不出来：要本项目存的检查点，里面有 config 和 model") from None
    if classes != config["vocab_size"]:
        raise ValueError(f"{path} 的输出层只分 {classes} 类，是第 6 章的分类器，不会说话：换一个第 5 章或第 7 章的检查点")
    if bad := [name for name, value in state.items() if not value.isfinite().all()]:
        raise ValueError(f"{path} 里的 {bad[0]} 有 nan 或 inf，写出来的都是乱码：换一个检查点")
    if llama:
        model.out_head.weight = model.tok_emb.weight
        model.cos, model.sin = rope_tables(config)
        tokenizer = build_tokenizer(checkpoint["tokens"])
        kind, eos_id = "chat", tokenizer.encode_single_token("<|im_end|>")
    else:
        os.environ["TIKTOKEN_CACHE_DIR"] = str(find_data("tiktoken"))
        tokenizer, kind, eos_id = tiktoken.get_encoding("gpt2"), "instruct" if "sft" in path.stem else "text", 50256
    return SimpleNamespace(name=path.name, model=model.eval(), tokenizer=tokenizer, kind=kind, limit=min(config["context_length"], CONTEXT), eos_id=eos_id)


class State:
    """一段对话写到哪里了：缓存、缓存里是哪些词元、要不要停。丢了也只是重算一遍。（详解见 ch05/experiments/exp_token_confidence.py）"""

    def __init__(self, talker):
        self.ids, self.cache = [], KVCache(talker.model.cfg, max_length=talker.limit, dtype=talker.model.tok_emb.weight.dtype)
        self.stop = False


def encode(talker, messages, max_new_tokens):
    """把对话写成这个模型见过的样子。（详解见 ch05/experiments/exp_token_confidence.py）"""
    encode_text, limit, count = talker.tokenizer.encode_ordinary, talker.limit, len(messages)
    if talker.kind == "text":
        ids = [i for n, message in enumerate(messages) for i in encode_text(("\n" if n and message["role"] == "user" else "") + message["content"])]
        return ids, f"太长，只看最后 {limit // 2} 个词元" if len(ids) >= limit else ""
    if talker.kind == "instruct":
        ids = encode_text(format_input({"instruction": messages[-1]["content"], "input": ""}) + "\n\n### Response:\n")
    while talker.kind == "chat":
        ids = encode_chat(talker.tokenizer, messages)
        if len(messages) <= 2 or len(ids) + max_new_tokens <= limit:
            break
        messages = messages[2:]
    if len(ids) >= limit:
        raise ValueError(f"这句话太长：写成提示词有 {len(ids)} 个词元，这个模型最多看 {limit} 个")
    return ids, f"最早的 {count - len(messages)} 句放不下，它看不见了" if len(messages) < count else ""


def choose(logits, temperature, top_k, top_p):
    """选下一个词元：温度，top-k，再 top-p（核采样，nucleus sampling）。（详解见 ch05/experiments/exp_token_confidence.py）"""
    logits = logits.float() - logits.max()  # (V,)
    probs = torch.softmax(logits, dim=-1)  # (V,)
    if temperature == 0:
        return logits.argmax().item(), probs
    ordered, index = torch.softmax(logits / temperature, dim=-1).sort(descending=True)
    if top_k:
        ordered[top_k:] = 0
        ordered /= ordered.sum()
    if top_p < 1:
        before = ordered.cumsum(dim=-1) - ordered  # (V,)
        ordered[~(before < top_p)] = 0
    return index[torch.multinomial(ordered, 1)].item(), probs


@torch.no_grad()
def stream_pieces(talker, state, ids, max_new_tokens, temperature, top_k, top_p):
    """写回答，每写一个词元交出一次到现在为止的全部。（详解见 ch05/experiments/exp_token_confidence.py）"""
    model, tokenizer, limit, ids = talker.model, talker.tokenizer, talker.limit, list(ids)
    decoder, pieces, waiting = codecs.getincrementaldecoder("utf-8")("replace"), [], []
    known = state.ids[: state.cache.length]
    same = next((i for i, (a, b) in enumerate(zip(known, ids)) if a != b), min(len(known), len(ids)))
    state.cache.length = min(same, len(ids) - 1)
    state.ids = ids
    for _ in range(max_new_tokens):
        if len(ids) >= limit:
            if talker.kind != "text":
                break
            del ids[: -(limit // 2)]
            state.cache.length = 0
        for part in torch.tensor([ids[state.cache.length :]]).split(CHUNK, dim=1):
            if not state.stop:
                logits = model(part, state.cache, last_only=True)[0, -1]  # (V,)
        if state.stop:
            break
        token, probs = choose(logits, temperature, top_k, top_p)
        if token == talker.eos_id:
            break
        ids.append(token)
        top = [(probs[i].item(), i) for i in probs.topk(RUNNERS + 1).indices.tolist()]
        others = [[spell(tokenizer, i), p] for p, i in top if i != token][:RUNNERS]
        waiting.append([spell(tokenizer, token), probs[token].item(), others])
        if text := decoder.decode(tokenizer.decode_single_token_bytes(token)):
            pieces.append([text, waiting])
            waiting = []
        yield pieces
    if waiting:
        pieces.append([decoder.decode(b"", final=True), waiting])
    yield pieces


def spell(tokenizer, token):
    """一个词元写成看得见的样子：空格是 ␣，换行是 ⏎，半个字写它的字节。（详解见 ch05/experiments/exp_token_confidence.py）"""
    return tokenizer.decode_single_token_bytes(token).decode("utf-8", "backslashreplace").replace(" ", "␣").replace("\n", "⏎")


# endregion


class Window(State):
    """服务器为一个浏览器窗口记着的东西。对话本身在浏览器里，这里丢了也只是重算一遍。

    参数:
        talker (SimpleNamespace): load 的结果
    """

    def __init__(self, talker):
        super().__init__(talker)
        self.cleared = False  # 写到一半按了清空
        self.lock = threading.Lock()  # 一个窗口同时只写一个回答

    def accept(self):
        """收下一句话：以前按的停和清空不算数了。从这里起按的都算，哪怕还没有开始写。

        返回:
            bool: 正在写上一个，就不收
        """
        if self.lock.locked():
            return False
        self.stop = self.cleared = False
        return True


def show(text, tokens):
    """一片文字的 HTML：底色越深，概率越低；指着它看到的话放在 data-tip 里。

    参数:
        text (str): 文字
        tokens (list): 它由哪些词元拼成，每个是三样：名字、概率、没有选上的（名字和概率）

    返回:
        str: 一个 span；文字和属性都转义过，模型或人写的 <script> 只是字
    """
    sure, lines = 1.0, []
    for name, p, others in tokens:
        sure *= p
        lines += [f"选了「{name}」　{p:.1%}", *(f"　没选「{other}」　{q:.1%}" for other, q in others)]
    tip = html.escape("\n".join(lines))
    return f'<span class="piece" style="background:rgba(235,120,0,{0.6 * (1 - sure):.2f})" data-tip="{tip}">{html.escape(text)}</span>'


def render(messages):
    """整段对话的 HTML。

    参数:
        messages (list[dict]): 用户的 {"role", "content"}；模型的还有 "pieces"

    返回:
        str: HTML
    """
    turns = []
    for message in messages:
        said = html.escape(message["content"]) if message["role"] == "user" else "".join(show(*piece) for piece in message["pieces"])
        turns.append(f'<div class="turn {"user" if message["role"] == "user" else "model"}">{said or "（什么也没有写）"}</div>')
    return "".join(turns)


def read_saved(text):
    """读浏览器里存的对话；不像样的（旧版本存的、别人改过的），就从头开始。

    参数:
        text (str): JSON

    返回:
        list[dict]: 对话
    """
    try:
        messages = json.loads(text or "[]")
        render(messages)
        return messages
    except Exception:
        return []


def reply(talker, window, messages, settings):
    """答最后一句话，边写边交出网页上要换的东西。

    参数:
        talker (SimpleNamespace): load 的结果
        window (Window): 哪个窗口
        messages (list[dict]): 对话，最后一句是用户的
        settings (tuple): 最多写几个、温度、top-k、top-p

    返回:
        Iterator[dict]: 要换的：saved（对话，JSON）、past（以前的话）、now（正在写的）、status（一句话）；写完之前没有 saved
    """
    if not window.lock.acquire(blocking=False):
        yield {"status": BUSY}
        return
    try:
        ids, note = encode(talker, messages, settings[0])
        yield {"past": render(messages), "now": '<div class="turn model waiting">……</div>', "status": note or "在读你的话"}
        start = shown = time.perf_counter()
        pieces = []
        for pieces in stream_pieces(talker, window, ids, *settings):
            if pieces and time.perf_counter() - shown > 0.05:  # 一秒最多换 20 次：再快眼睛也看不出来
                shown = time.perf_counter()
                yield {"now": render([{"role": "assistant", "pieces": pieces}])}
        seconds, count = time.perf_counter() - start, sum(len(tokens) for _, tokens in pieces)
        messages = [*messages, {"role": "assistant", "content": "".join(text for text, _ in pieces), "pieces": pieces}]
        status = f"{count} 个词元，{seconds:.1f} 秒，一秒 {count / seconds:.0f} 个" + ("；停了" if window.stop else "")
        if window.cleared:  # 写到一半清空了：最后交出的也是空的，不然又显示出来
            messages, status, note = [], "", ""
        last = {"saved": json.dumps(messages), "past": render(messages), "now": "", "status": "；".join(filter(None, [status, note]))}
    except ValueError as error:
        last = {"status": str(error)}
    finally:
        window.lock.release()
    yield last  # 先放锁，再交最后一次：浏览器一看到写完了，马上发下一句，也收得下


CSS = """
.gradio-container { max-width: 860px !important; margin: 0 auto !important; }
#talk { display: flex; flex-flow: column-reverse nowrap; height: 52vh; min-height: 220px; overflow-y: auto;
        border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 12px; }
#talk > * { flex: none; }
.turn { padding: 8px 12px; margin: 6px 0; border-radius: 8px; white-space: pre-wrap; overflow-wrap: anywhere;
        font-size: 16px; line-height: 1.7; color: var(--body-text-color); }
.user { background: rgba(128, 128, 128, 0.25); width: fit-content; max-width: 85%; margin-left: auto; }
.piece:hover { outline: 1px solid var(--body-text-color); }
#status { min-height: 1.6em; opacity: 0.75; }
#tip { position: fixed; z-index: 1000; pointer-events: none; white-space: pre-wrap; overflow-wrap: anywhere; max-width: min(340px, calc(100vw - 16px));
       padding: 8px 10px; border-radius: 6px; background: #333; color: #fff; font-size: 14px; line-height: 1.5; }
"""  # column-reverse：滚动条总在最下面，新写的字看得见
# 指着一片，把它的 data-tip 显示在旁边；textContent 只当文字，不当 HTML。
SCRIPT = """() => {
    const tip = document.body.appendChild(document.createElement("div"));
    tip.id = "tip"; tip.hidden = true;
    document.addEventListener("scroll", () => { tip.hidden = true; }, true);
    document.addEventListener("pointerover", event => {
        const piece = event.target.closest(".piece");
        tip.hidden = !piece;
        if (!piece) return;
        tip.textContent = piece.dataset.tip;
        const at = piece.getClientRects()[0], below = at.bottom + 6;
        tip.style.left = Math.max(8, Math.min(at.left, innerWidth - tip.offsetWidth - 8)) + "px";
        tip.style.top = (below + tip.offsetHeight < innerHeight ? below : at.top - tip.offsetHeight - 6) + "px";
    });
}"""


def build_page(talker):
    """搭好网页，还没有打开。

    参数:
        talker (SimpleNamespace): load 的结果

    返回:
        gradio.Blocks: 网页

    异常:
        ValueError: 没有装 gradio，或太旧
    """
    gr = import_gradio()
    windows = {}  # 每个浏览器窗口有自己的 session_hash，各有各的缓存，不会串

    def window_of(request):
        if request.session_hash not in windows:
            windows[request.session_hash] = Window(talker)
        return windows[request.session_hash]

    def take(text, request: gr.Request):
        """收下一句话，清空输入框；不与写回答的放在一起：gradio 写完时会把那边的输出再设一遍，正在打的下一句就没了。"""
        try:
            if not text.strip() or not window_of(request).accept():
                raise ValueError("先写一句话" if not text.strip() else BUSY)
            encode(talker, [{"role": "user", "content": text}], 1)
        except ValueError as error:
            return text, "", str(error)  # 还在输入框里，可以改
        return "", text, ""

    def send(text, saved, length, temperature, top_k, top_p, request: gr.Request):
        messages = [*read_saved(saved), {"role": "user", "content": text}] if text else []
        yield from write(messages, request, length, temperature, top_k, top_p)

    def take_again(saved, request: gr.Request):
        """收下「重答」：再问一遍最后一句。"""
        messages = read_saved(saved)[:-1]
        if not messages or not window_of(request).accept():
            return "", BUSY if messages else "还没有问过"
        return "重答", ""

    def retry(accepted, saved, length, temperature, top_k, top_p, request: gr.Request):
        yield from write(read_saved(saved)[:-1] if accepted else [], request, length, temperature, top_k, top_p)

    def write(messages, request, *settings):
        """reply 交出的，换成 gradio 要的：没有提到的部分不动。"""
        for changes in reply(talker, window_of(request), messages, settings) if messages else []:
            yield {parts[name]: value for name, value in changes.items()}

    def stop(request: gr.Request):
        window_of(request).stop = True

    def clear(request: gr.Request):
        window_of(request).stop = window_of(request).cleared = True
        return "", "", "", ""

    def restore(text):
        return text, render(read_saved(text))

    def close(request: gr.Request):
        if window := windows.pop(request.session_hash, None):
            window.stop = True

    about = f"{html.escape(talker.name)}　{KINDS[talker.kind]}<br>颜色越深，模型给这个词元的概率越低；指着它（手机上点一下），看它差一点写成什么"
    with gr.Blocks(title="和模型聊天") as page:
        gr.HTML(f"<h2>和模型聊天</h2>{about}")
        with gr.Column(elem_id="talk"):
            with gr.Column():
                past, now = gr.HTML(), gr.HTML()
        status = gr.HTML(elem_id="status")
        box = gr.Textbox(placeholder="写一句话，回车发送（Shift + 回车换行）", show_label=False, lines=1, max_lines=6, max_length=20_000, elem_id="box")
        with gr.Row():
            names = {"发送": "primary", "停": "stop", "重答": "secondary", "清空": "secondary"}
            go, halt, again, wipe = (gr.Button(name, variant=variant, min_width=60) for name, variant in names.items())
        narrow = {"min_width": 300, "buttons": []}  # 电脑上两行，手机上四行
        with gr.Row():
            length = gr.Slider(1, 512, MAX_NEW_TOKENS, step=1, label="最多写几个词元", **narrow)
            temperature = gr.Slider(0, 2, TEMPERATURE, step=0.05, label="温度（0 是贪心）", **narrow)
            top_k = gr.Slider(0, 200, TOP_K, step=1, label="top-k（0 是不限）", **narrow)
            top_p = gr.Slider(0.05, 1, TOP_P, step=0.05, label="top-p（1 是不限）", **narrow)
        saved, asked = gr.Textbox(visible=False), gr.Textbox(visible=False)  # 对话的 JSON；收下了什么，没有收就是空的
        parts = {"saved": saved, "past": past, "now": now, "status": status}
        settings, outputs = [length, temperature, top_k, top_p], [saved, past, now, status]
        keep = {"fn": None, "inputs": [saved], "js": "text => { try { sessionStorage.setItem('chat', text) } catch {} }"}  # 每个窗口一份，别的窗口看不见
        writing = {"concurrency_limit": 4, "show_progress": "hidden"}  # 几个窗口可以同时写，各慢一些；不设，第二个要等第一个写完
        taken = gr.on([go.click, box.submit], take, [box], [box, asked, status], queue=False)
        taken.then(send, [asked, saved, *settings], outputs, **writing).then(**keep)
        taken = again.click(take_again, [saved], [asked, status], queue=False)
        taken.then(retry, [asked, saved, *settings], outputs, **writing).then(**keep)
        halt.click(stop, queue=False)  # 不排队，马上停
        wipe.click(clear, None, outputs, queue=False).then(**keep)
        page.load(restore, [saved], [saved, past], js="() => sessionStorage.getItem('chat') || ''", show_progress="hidden")
        page.unload(close)
    return page


def import_gradio():
    """导入 gradio，先关掉它的统计和联网。

    返回:
        module: gradio

    异常:
        ValueError: 没有装，或太旧
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # 要在导入之前
    for name in ("NO_PROXY", "no_proxy"):  # 设了代理的电脑，访问自己也会绕到代理去，打不开
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost"]))
    try:
        import gradio
    except ImportError:
        gradio = None
    if gradio is None or int(gradio.__version__.split(".")[0]) < 6:
        raise ValueError("网页要用 gradio：先 pip install -r setup/requirements-ui.txt（只想问一句，加 --quick，不用装）")
    return gradio


def launch(page, port, **options):
    """打开网页，只给这台电脑看。

    参数:
        page (gradio.Blocks): build_page 的结果
        port (int): 端口
        options: 交给 gradio 的别的设置，测试用

    异常:
        ValueError: 端口被占用
    """
    theme = import_gradio().themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # 系统自带的字体，什么也不下载
    options |= {"share": False, "run_history": False, "ssr_mode": False, "footer_links": []}  # 不经外面的服务器转发，不记录问过什么
    try:
        page.launch(server_name="127.0.0.1", server_port=port, theme=theme, css=CSS, js=SCRIPT, **options)
    except OSError:
        raise ValueError(f"端口 {port} 打不开，多半是别的程序占着：换一个，如 --port {port + 1}") from None


def quick(talker):
    """不开网页，问一句，印出最没有把握的几个词元，自查。

    参数:
        talker (SimpleNamespace): load 的结果
    """
    question, window = "Every effort moves you" if talker.kind == "text" else "What is the capital of France?", Window(talker)
    messages, settings = [{"role": "user", "content": question}], (24, 0.0, 0, 1.0)
    *_, last = reply(talker, window, messages, settings)
    answer = json.loads(last["saved"])[-1]
    tokens = [token for _, tokens in answer["pieces"] for token in tokens]
    print(f"{talker.name}　{KINDS[talker.kind]}\n问　{question}\n答　{answer['content']}\n　　{last['status']}\n\n最没有把握的三个词元")
    for name, p, others in sorted(tokens, key=lambda token: token[1])[:3]:
        print(f"  {p:5.1%}　选了「{name}」　没选　" + "　".join(f"「{other}」{q:.1%}" for other, q in others[:3]))

    print("\n这个数字对吗？")
    evil = '"><script>alert(1)</script>'
    page = render([{"role": "user", "content": evil}, {"role": "assistant", "pieces": [[evil, [[evil, 0.5, [[evil, 0.1]]]]]]}])
    confirm("话里的 <script> 只是文字，引号也逃不出属性", "<script" not in page and page.count("&quot;&gt;&lt;script") == 4, "有一处没有转义")
    kept = read_saved(last["saved"])
    confirm("存进浏览器再读回来，一字不差；存坏了的，从头开始", render(kept) == last["past"] and read_saved("[{]") == read_saved('[{"role": "user"}]') == [], "读的时候没有查")
    first = reply(talker, window, messages, settings)
    next(first)  # 正在写
    confirm("正在写的时候，第二句不插进来", not window.accept() and list(reply(talker, window, messages, settings)) == [{"status": BUSY}], "没有看锁")
    first.close()
    window.accept()
    window.stop = True  # 收下了，还没有开始写，就按停
    *_, stopped = reply(talker, window, messages, settings)
    confirm("刚发送就按停，一个词元也不写", stopped["status"].startswith("0 个词元") and window.accept() and not window.stop, "开始写的时候，把停忘掉了")


def main():
    """装上模型，打开网页。"""
    parser = argparse.ArgumentParser(description="实验　在网页里和模型聊天")
    parser.add_argument("--model", type=Path, help="哪个检查点；默认是 SmolLM2，没有就是自己训练的 gpt_mini.pth")
    parser.add_argument("--port", type=int, default=7860, help="端口，默认 7860")
    parser.add_argument("--quick", action="store_true", help="不开网页，问一句，自查")
    args = parser.parse_args()
    try:
        if not 1 <= args.port <= 65535:
            raise ValueError(f"端口在 1 到 65535 之间，不能是 {args.port}")
        if not args.quick:
            import_gradio()  # 没有装，就不用等模型装好才说
        talker = load(args.model or (SMOLLM2 if SMOLLM2.is_file() else find_data("gpt_mini.pth")))
        if args.quick:
            torch.manual_seed(123)
            return quick(talker)
        print(f"{talker.name}　{KINDS[talker.kind]}\n按 Ctrl-C 退出", file=sys.stderr)
        launch(build_page(talker), args.port)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
