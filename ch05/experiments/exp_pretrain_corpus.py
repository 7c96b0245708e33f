"""第 5 章 · 实验　几分钟、两个核，从零练出来的模型写得出什么？断了接着练，与没断过一模一样

问题：　语料放在磁盘上，一次只读几页；训练随时可能被 kill -9、写满磁盘、练成 nan。怎样练，才一步也不白练？
先猜：　换一份词表，损失（每个词元）就不能直接比了。那比什么？（先想 10 秒，再运行）
看点：　① 每字节几比特（bits per byte）：损失 ÷ ln 2 ÷ 一个词元平均几个字节，不同的词表也能比；② 它写出来的话，从乱码到成行、成句、成韵；
        ③ 随时 kill -9，再运行同一条命令：权重、优化器、随机数、数据走到哪里都接得上，最后逐位相同；④ 学习率：预热，再按余弦降下来。
动手改：1. --lr 1e30：梯度或损失成了 nan、无穷大，马上停下，说最后一个好的检查点在哪里；换回来，从那里接着练。
        2. --quick --batch-size 4 --accumulate 2 --out 另一个文件夹：一步还是那 8 个窗口，损失几乎相同，差的是 dropout 抽得不一样。
        3. 把 LR 改成 0.002（矩阵走得慢十倍），--quick：最后每字节从 3.86 比特变成 4.19 左右。

运行：
    python ch05/experiments/exp_pretrain_corpus.py                                        # 先运行 exp_corpus_clean.py、exp_corpus_prepare.py
    python ch05/experiments/exp_pretrain_corpus.py --corpus ch05/outputs/corpus_verse     # 断了就再运行一次，接着练
    python ch05/experiments/exp_pretrain_corpus.py --say "import os"                      # 练好了（或练到一半）让它写
    python ch05/experiments/exp_pretrain_corpus.py --quick
    约 5 分钟，0.9 GB（2 核 CPU）

形状记号：b 批大小　t 上下文长度　d 嵌入维度　h 头数　k 每个头的维度　V 词表大小
"""

import argparse
import hashlib
import json
import math
import os
import sys
import time
import warnings
from contextlib import contextmanager, nullcontext
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import tiktoken
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
# 改这里：Llama 那样的小模型（RMSNorm、RoPE、SwiGLU、QK-norm，输出层与词嵌入共用一份权重）
CONFIG = {"context_length": 256, "emb_dim": 192, "n_heads": 3, "n_kv_groups": 3, "head_dim": 64, "n_layers": 4, "hidden_dim": 512, "drop_rate": 0.1, "qk_norm": True, "norm_eps": 1e-6, "rope_base": 10_000}
TINY = CONFIG | {"context_length": 64, "emb_dim": 48, "n_heads": 2, "n_kv_groups": 2, "head_dim": 24, "n_layers": 2, "hidden_dim": 96}  # --quick 用
STEPS, BATCH_SIZE, ACCUMULATE = 1200, 8, 1  # 一步用 BATCH_SIZE × ACCUMULATE 个窗口；内存不够就减前一个、加后一个，梯度的平均不变
LR, ADAM_LR, WARMUP = 0.02, 6e-3, 0.05  # 矩阵用 Muon，其余用 AdamW；开头百分之几的步数预热
EVAL_TOKENS = 16_384  # 练的中途用多少个留出的词元评估；练完用全部
PROMPTS = {"python": ["import os\n", "def read_", "class "], "docstrings": ["Return the ", "If the ", "This "], "verse": ["春日", "送友人", "秋夜　"], "bytes": ["The "]}
END = "<|endoftext|>"
GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


# region 沿用 ch02/experiments/exp_bpe_from_scratch.py: VISIBLE, BYTE_OF_ID
VISIBLE = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]


BYTE_OF_ID = bytes(VISIBLE + [byte for byte in range(256) if byte not in VISIBLE])
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


# region 沿用 ch05/experiments/exp_gpt_to_llama.py: RMSNorm
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


# region 改写 ch05/experiments/exp_qwen3.py: GroupedQueryAttention
class GroupedQueryAttention(nn.Module):
    """Qwen3 的注意力：每个头的维度自己定，查询和键打分之前先各归一化一次（QK-norm）。（原版详解见 ch05/experiments/exp_qwen3.py）"""

    def __init__(self, d_in, num_heads, num_kv_groups, head_dim=None, qk_norm=False, eps=1e-6):
        super().__init__()
        if num_kv_groups < 1 or num_heads % num_kv_groups != 0:
            raise ValueError(f"{num_heads} 个头不能平均分成 {num_kv_groups} 组")
        if head_dim is None and d_in % num_heads != 0:
            raise ValueError(f"d_in={d_in} 不能被 num_heads={num_heads} 整除，要给出 head_dim")
        self.num_heads, self.num_kv_groups = num_heads, num_kv_groups
        self.head_dim = d_in // num_heads if head_dim is None else head_dim
        self.d_out = num_heads * self.head_dim
        self.W_query = nn.Linear(d_in, self.d_out, bias=False)
        self.W_key = nn.Linear(d_in, num_kv_groups * self.head_dim, bias=False)
        self.W_value = nn.Linear(d_in, num_kv_groups * self.head_dim, bias=False)
        self.out_proj = nn.Linear(self.d_out, d_in, bias=False)
        self.q_norm = RMSNorm(self.head_dim, eps) if qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, eps) if qk_norm else None

    def queries_and_keys(self, x, cos, sin):
        b, t, _ = x.shape
        queries = self.W_query(x).view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        keys = self.W_key(x).view(b, t, self.num_kv_groups, self.head_dim).transpose(1, 2)  # (b, g, t, k)
        if self.q_norm is not None:
            queries, keys = self.q_norm(queries), self.k_norm(keys)  # (b, h, t, k)，(b, g, t, k)
        return apply_rope(queries, cos, sin), apply_rope(keys, cos, sin)

    def forward(self, x, cos, sin):  # 改：不用掩码，现成的注意力自己会遮住未来
        b, t, _ = x.shape
        queries, keys = self.queries_and_keys(x, cos, sin)
        values = self.W_value(x).view(b, t, self.num_kv_groups, self.head_dim).transpose(1, 2)  # (b, g, t, k)
        keys = keys.repeat_interleave(self.num_heads // self.num_kv_groups, dim=1)  # (b, h, t, k)
        values = values.repeat_interleave(self.num_heads // self.num_kv_groups, dim=1)  # (b, h, t, k)
        # 改：换成 PyTorch 现成的注意力，(b, h, t, t) 的分数不落地，快，也省内存
        context = nn.functional.scaled_dot_product_attention(queries, keys, values.to(queries.dtype), is_causal=True)  # (b, h, t, k)
        context = context.transpose(1, 2).reshape(b, t, self.d_out)  # (b, t, h·k)　改：拼起来，与原来相同
        return self.out_proj(context)


# endregion


# region 改写 ch05/experiments/exp_qwen3.py: TransformerBlock
class TransformerBlock(nn.Module):
    """Qwen3 的 Transformer 块，只留密集的前馈网络，加上 dropout。（原版详解见 ch05/experiments/exp_qwen3.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.att = GroupedQueryAttention(cfg["emb_dim"], cfg["n_heads"], cfg["n_kv_groups"], cfg["head_dim"], cfg["qk_norm"], cfg["norm_eps"])
        self.ff = FeedForward(cfg)  # 改：没有混合专家
        self.norm1 = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])
        self.norm2 = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])
        self.drop_shortcut = nn.Dropout(cfg["drop_rate"])  # 改：语料小，要练好几轮，dropout 防止背书

    def forward(self, x, cos, sin):  # 改：没有掩码
        x = x + self.drop_shortcut(self.att(self.norm1(x), cos, sin))  # (b, t, d)　改：加回去之前丢掉一些
        return x + self.drop_shortcut(self.ff(self.norm2(x)))  # 改：同上


# endregion


# region 改写 ch05/experiments/exp_qwen3.py: Qwen3Model
class Qwen3Model(nn.Module):
    """Qwen3：词嵌入 → 一摞 Transformer 块 → RMSNorm → 输出层，输出层与词嵌入共用。（原版详解见 ch05/experiments/exp_qwen3.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.trf_blocks = nn.ModuleList([TransformerBlock(cfg) for _ in range(cfg["n_layers"])])
        self.final_norm = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)
        cos, sin = compute_rope_params(self.trf_blocks[0].att.head_dim, cfg["rope_base"], cfg["context_length"])
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        # 改：输出层就是词嵌入，少一份 V × d 的参数；这时词嵌入不能用默认的标准差 1，否则一上来 logits 就太大
        self.out_head.weight = self.tok_emb.weight
        nn.init.normal_(self.tok_emb.weight, std=0.02)  # 改：同上
        for block in self.trf_blocks:  # 改：每一块刚开始什么也不加，梯度走残差连接直达；练起来稳，起步快
            nn.init.zeros_(block.att.out_proj.weight)  # 改：同上
            nn.init.zeros_(block.ff.fc3.weight)  # 改：同上

    def forward(self, in_idx):
        t = in_idx.shape[1]
        if t > len(self.cos):
            raise ValueError(f"输入有 {t} 个词元，超过了模型的上下文长度 {len(self.cos)}")
        # 改：这里原来做一张掩码，不用了
        x = self.tok_emb(in_idx)  # (b, t, d)
        for block in self.trf_blocks:
            x = block(x, self.cos, self.sin)  # (b, t, d)　改：没有掩码
        return self.out_head(self.final_norm(x))  # (b, t, V)


# endregion


# region 沿用 ch05/main: generate
def generate(model, idx, max_new_tokens, context_size, temperature=0.0, top_k=None, eos_id=None):
    """逐个生成词元，可以调温度、限制 top-k，遇到结束词元就停。（详解见 ch05/main/example_03_decoding.py）"""
    if not temperature >= 0:
        raise ValueError(f"温度不能是 {temperature}：0 表示贪心，越大越随意")
    if top_k is not None and not 1 <= top_k <= model.out_head.out_features:
        raise ValueError(f"top_k 应在 1 到 {model.out_head.out_features}（词表大小）之间，不能是 {top_k}")
    finished = torch.zeros(len(idx), 1, dtype=torch.bool, device=idx.device)  # (b, 1)
    for _ in range(max_new_tokens):
        idx_cond = idx[:, -context_size:]  # (b, t)
        with torch.no_grad():
            logits = model(idx_cond)  # (b, t, V)
        logits = logits[:, -1, :]  # (b, V)
        if top_k is not None:
            top_logits, _ = torch.topk(logits, top_k)  # (b, top_k)
            min_val = top_logits[:, -1:]  # (b, 1)
            logits = torch.where(logits < min_val, -torch.inf, logits)  # (b, V)
        if temperature > 0.0:
            logits = logits / temperature
            logits = logits - logits.max(dim=-1, keepdim=True).values  # (b, V)
            probs = torch.softmax(logits, dim=-1)  # (b, V)
            idx_next = torch.multinomial(probs, num_samples=1)  # (b, 1)
        else:
            idx_next = torch.argmax(logits, dim=-1, keepdim=True)  # (b, 1)
        if eos_id is not None:
            idx_next = torch.where(finished, eos_id, idx_next)  # (b, 1)
            finished = idx_next == eos_id  # (b, 1)
            if finished.all():
                break
        idx = torch.cat((idx, idx_next), dim=1)  # (b, t + 1)
    return idx


# endregion


# region 沿用 ch05/experiments/exp_resume.py: get_rng_state, set_rng_state
def get_rng_state(device):
    """记下随机数发生器此刻的状态：打乱数据用 CPU 的，dropout 用计算设备的。（详解见 ch05/experiments/exp_resume.py）"""
    state = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state[device.type] = getattr(torch, device.type).get_rng_state()
    return state


def set_rng_state(state, device):
    """把随机数发生器恢复到 get_rng_state 记下的状态。（详解见 ch05/experiments/exp_resume.py）"""
    torch.set_rng_state(state["cpu"])
    if device.type in state and device.type != "cpu":
        getattr(torch, device.type).set_rng_state(state[device.type])


# endregion


# region 沿用 ch05/experiments/exp_corpus_clean.py: atomic, digest
@contextmanager
def atomic(path, mode="w"):
    """写一个文件，要么完整，要么没有：写到临时文件，落盘，再改名。（详解见 ch05/experiments/exp_corpus_clean.py）"""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, mode, **({} if "b" in mode else {"encoding": "utf-8", "newline": "\n"})) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise OSError(f"写不进 {path}（磁盘满了，或没有写的权限）：腾出空间，再运行同一条命令，会接着做") from error
    finally:
        part.unlink(missing_ok=True)


def digest(path):
    """一个文件的 SHA-256，一段段地读。（详解见 ch05/experiments/exp_corpus_clean.py）"""
    result = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            result.update(data)
    return result.hexdigest()


# endregion


# region 沿用 ch05/experiments/exp_corpus_prepare.py: load_vocab
def load_vocab(path):
    """词表文件 → 分词器：合并是自己学的，编码交给 tiktoken，它是 Rust 写的。（详解见 ch05/experiments/exp_corpus_prepare.py）"""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content == "gpt2":
            return tiktoken.get_encoding("gpt2")
        tokens = [bytes([byte]) for byte in BYTE_OF_ID]
        for left, right in content:
            tokens.append(tokens[left] + tokens[right])
        ranks = {}
        for i, token in enumerate(tokens):
            ranks.setdefault(token, i)
        return tiktoken.Encoding("corpus", pat_str=GPT2_SPLIT, mergeable_ranks=ranks, special_tokens={END: len(tokens)})
    except (OSError, ValueError, TypeError, IndexError):
        raise ValueError(f"{path} 不见了，或者坏了：删掉这个文件夹，重新运行 exp_corpus_prepare.py") from None


# endregion


# region 沿用 ch05/experiments/exp_shard_reader.py: GROUP, open_shards, window_stream, next_batch, token_bytes, bits_per_byte, unigram_bits, quick_shards
GROUP = 64


def open_shards(folder, split, context_length):
    """打开词元分片：核对摘要，映射到内存。一个字也没有读进来，用到哪个窗口，系统才读哪几页。（详解见 ch05/experiments/exp_shard_reader.py）"""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        names = [name for name in index["shards"] if name.startswith(split)] + ["vocab.json"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{folder} 里没有做好的分片：先运行 exp_corpus_clean.py 和 exp_corpus_prepare.py，再用 --corpus 指过来") from None
    for name in names:
        expected = index["shards"][name]["sha256"] if name in index["shards"] else index["vocab_sha256"]
        if not (folder / name).is_file() or digest(folder / name) != expected:
            raise ValueError(f"{folder / name} 不见了，或者坏了（摘要与 index.json 里的不同）：删掉 {folder} 里的 index.json 和 *.bin，重新运行 exp_corpus_prepare.py")
    shards = [np.memmap(folder / name, dtype="<u2", mode="r") for name in names[:-1]]
    if max(map(len, shards), default=0) <= 2 * context_length:
        raise ValueError(f"{folder} 里{'训练的' if split == 'train' else '留出的'}分片都不到 {2 * context_length} 个词元，切不出长 {context_length} 的窗口：多给一些文本")
    return index, shards


def window_stream(shards, context_length, seed, epoch, position):
    """没有尽头的窗口：一轮把每个窗口取一次，次序每轮重新打乱，从上次走到的地方接着取。（详解见 ch05/experiments/exp_shard_reader.py）"""
    while True:
        rng, done = np.random.default_rng([seed, epoch]), 0
        order = rng.permutation(len(shards))
        for group in (order[i : i + GROUP] for i in range(0, len(order), GROUP)):
            places = [(i, start) for i in group for start in range(rng.integers(context_length), len(shards[i]) - context_length, context_length)]
            mixed = rng.permutation(np.array(places).reshape(-1, 2))  # (n, 2)
            for i, start in mixed[position - done if done < position else 0 :]:
                position += 1
                yield epoch, position, shards[i][start : start + context_length + 1]
            done += len(mixed)
        epoch, position = epoch + 1, 0


def next_batch(stream, batch_size, device):
    """取一批窗口，切成输入和目标。（详解见 ch05/experiments/exp_shard_reader.py）"""
    rows = [next(stream) for _ in range(batch_size)]
    windows = torch.from_numpy(np.stack([window for *_, window in rows]).astype(np.int64)).to(device)  # (b, t + 1)
    return rows[-1][:2], windows[:, :-1], windows[:, 1:]


def token_bytes(vocab, vocab_size):
    """每个词元是几个字节；结束词元不是文本，算 0 个。（详解见 ch05/experiments/exp_shard_reader.py）"""
    lengths = torch.zeros(vocab_size)  # (V,)
    for token in vocab.token_byte_values():
        lengths[vocab.encode_single_token(token)] = len(token)
    return lengths


def bits_per_byte(nats, count):
    """一共多少奈特的损失 ÷ ln 2 = 多少比特；再除以这些词元一共几个字节。（详解见 ch05/experiments/exp_shard_reader.py）"""
    return nats / math.log(2) / count


def unigram_bits(shards, held_out, lengths):
    """只数每个词元出现几次，每字节要几比特：什么上文也不看，能做到的最好。（详解见 ch05/experiments/exp_shard_reader.py）"""
    counts = sum(np.bincount(shard, minlength=len(lengths)) for shard in shards) + 1
    seen = sum(np.bincount(shard, minlength=len(lengths)) for shard in held_out)
    return bits_per_byte(-(seen * np.log(counts / counts.sum())).sum(), (seen * lengths.numpy()).sum())


def quick_shards(folder):
    """没有语料也能走完流程：自带的英文短篇，一个字节一个词元，一段一篇，每 8 段留出一段。正经的做法见 exp_corpus_prepare.py。（详解见 ch05/experiments/exp_shard_reader.py）"""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text("[]", encoding="utf-8")
    vocab, shards = load_vocab(folder / "vocab.json"), {}
    pieces = [piece for piece in read_text(find_data("story-en.txt")).split("\n\n") if piece.strip()]
    for split, chosen in (("train", [piece for i, piece in enumerate(pieces) if i % 8]), ("val", pieces[::8])):
        path = folder / f"{split}_00000.bin"
        np.array([i for piece in chosen for i in [*vocab.encode_ordinary(piece), vocab.eot_token]], "<u2").tofile(path)
        shards[path.name] = {"tokens": path.stat().st_size // 2, "sha256": digest(path)}
    index = {"end": vocab.eot_token, "vocab_size": vocab.n_vocab, "vocab_sha256": digest(folder / "vocab.json"), "shards": shards}
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")


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

os.environ["TIKTOKEN_CACHE_DIR"] = str(find_data("tiktoken"))  # GPT-2 的词表由 setup/run.sh 放好，不联网


# region 沿用 setup/device_check.py: pick_device
def pick_device(name="auto"):
    """选择计算设备；点名要的设备不存在就报错，绝不悄悄换成 CPU。（详解见 setup/device_check.py）"""
    available = {"mps": torch.backends.mps.is_available(), "cuda": torch.cuda.is_available(), "cpu": True}
    name = next(device for device, found in available.items() if found) if name == "auto" else name
    if not available.get(name):
        raise ValueError(f"这台机器上没有设备 {name}；运行 python setup/device_check.py 看有哪些、为什么")
    return torch.device(name)


# endregion


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


# ---- 评估、学习率、精度 ----


def evaluate(model, shards, lengths, batch_size, device, limit):
    """在留出的文档上评估，窗口不重叠，至多约 limit 个词元。

    参数:
        model (nn.Module): 语言模型
        shards (list[np.ndarray]): 留出的分片
        lengths (Tensor): 每个词元几个字节，(V,)
        batch_size、device、limit: 一次算几个窗口；在哪里算；最多约几个词元

    返回:
        tuple[float, float]: 每个词元的损失；每字节几比特
    """
    t, nats, tokens, count = model.cfg["context_length"], 0.0, 0, 0.0
    windows = [shard[i : i + t + 1] for shard in shards for i in range(0, len(shard) - t, t)]
    windows = windows[:: math.ceil(len(windows) * t / limit)]  # 隔几个取一个：只看开头的话，全是同几篇
    model.eval()
    for start in range(0, len(windows), batch_size):
        ids = torch.from_numpy(np.stack(windows[start : start + batch_size]).astype(np.int64)).to(device)  # (b, t + 1)
        with torch.no_grad():
            nats += nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum").item()
        tokens += ids[:, 1:].numel()
        count += lengths[ids[:, 1:].cpu()].sum().item()
    model.train()
    return nats / tokens, bits_per_byte(nats, count)


def learning_rate_share(step, steps):
    """这一步用最大学习率的几成：开头的 WARMUP 从 0 直线升上去，后面按余弦降到一成。

    参数:
        step, steps (int): 第几步（从 0 数）；一共几步

    返回:
        float: 0 到 1
    """
    warmup = max(1, round(steps * WARMUP))
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def make_optimizers(model, lr):
    """块里的矩阵用 Muon（把动量变成接近正交的方向再走），词嵌入和归一化的缩放用 AdamW。

    参数:
        model (nn.Module): 语言模型
        lr (float): Muon 的最大学习率；AdamW 的按同样的倍数变

    返回:
        list[tuple]: 两个优化器，各带着最大的学习率
    """
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        (matrices if "trf_blocks" in name and parameter.dim() == 2 else others).append(parameter)
    muon, adam = torch.optim.Muon(matrices, lr=lr, weight_decay=0.01), torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    return [(muon, lr), (adam, lr / LR * ADAM_LR)]


def pick_precision(name, model, device, batch_size):
    """用 fp32 还是 bf16 自动混合精度：点名的照办；auto 时两种各试几步，bf16 快一成以上才用。小模型、老 CPU 上，它常常更慢。

    参数:
        name (str): auto、fp32 或 bf16
        model、device、batch_size: 语言模型、设备、批大小

    返回:
        str: fp32 或 bf16
    """
    if name != "auto":
        return name
    ids, seconds = torch.zeros(batch_size, model.cfg["context_length"], dtype=torch.long, device=device), {"fp32": [], "bf16": []}  # (b, t)
    for _ in range(4):
        for kind, times in seconds.items():
            start = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16) if kind == "bf16" else nullcontext():
                loss = model(ids).float().logsumexp(dim=-1).mean()
            loss.backward()
            times.append(time.perf_counter() - start + 0 * loss.item())
    model.zero_grad(set_to_none=True)
    best = {kind: min(times[1:]) for kind, times in seconds.items()}  # 头一次是热身
    print(f"精度　fp32 一步 {best['fp32']:.2f} 秒，bf16 {best['bf16']:.2f} 秒：用 {'bf16' if best['bf16'] < 0.9 * best['fp32'] else 'fp32'}")
    return "bf16" if best["bf16"] < 0.9 * best["fp32"] else "fp32"


# ---- 检查点、日志、图 ----


def save_checkpoint(path, content):
    """存检查点：先写到临时文件，落盘，再改名；权重里有 nan 就不存，旧的那个留着。

    参数:
        path (Path): 文件名
        content (dict): 要存的内容

    异常:
        ValueError: 权重不全是有限的数
        OSError: 写不了；旧的检查点完好
    """
    if not all(tensor.isfinite().all() for tensor in content["model"].values()):
        raise ValueError(f"权重里有了 nan 或无穷大，没有存；最后一个好的检查点是 {path}，把 --lr 改小，从那里接着练")
    try:
        with atomic(path, "wb") as file:
            torch.save(content, file)
    except RuntimeError as error:  # 磁盘满了，torch 有时报的是它
        raise OSError(f"写不进 {path}（磁盘满了，或没有写的权限）：腾出空间，再运行同一条命令，会接着练") from error


def load_checkpoint(path):
    """读检查点。

    参数:
        path (Path): 文件名

    返回:
        dict: save_checkpoint 存下的内容

    异常:
        ValueError: 坏了，或不是这个脚本存的
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 遇到别人的文件，torch 会先用英文警告几句
            content = torch.load(path, map_location="cpu", weights_only=True)
        if {"about", "config", "model", "optimizers", "progress", "rng"} <= content.keys():
            return content
    except Exception:  # 损坏的文件能引出各种异常，处理办法都一样
        pass
    raise ValueError(f"{path} 读不出来：坏了，或不是这个脚本存的检查点；挪走它，从头练") from None


def trim_log(path, step):
    """接着练之前，把日志里检查点之后的行删掉（被杀死时可能已经写了几行，最后一行可能只写了一半），它们会重写。

    参数:
        path (Path): 日志，一行一个 JSON
        step (int): 检查点走到第几步
    """
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            kept += [line] if json.loads(line)["step"] <= step else []
        except (ValueError, KeyError, TypeError):
            break
    with atomic(path) as file:
        file.writelines(line + "\n" for line in kept)


def draw(log, path, title):
    """两条曲线：损失，每字节几比特。练的时候每次评估都重画，打开着就能看它往下走。

    参数:
        log、path、title: 日志、图片、语料的名字
    """
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for axis, key, label in ((left, "train_loss", "训练"), (left, "val_loss", "留出的文档"), (right, "bits_per_byte", "留出的文档")):
        axis.plot([row["tokens"] / 1e6 for row in rows], [row[key] for row in rows], "o-", markersize=3, label=label)
        axis.legend()
    left.set(xlabel="看过的词元（百万）", ylabel="损失（每个词元）", title=title)
    right.set(xlabel="看过的词元（百万）", ylabel="每字节几比特（留出的文档）", title=f"最后 {rows[-1]['bits_per_byte']:.3f}")
    with atomic(path, "wb") as file:
        figure.savefig(file, dpi=130, format="png")
    plt.close(figure)


def say(model, vocab, prompt, device, count=120):
    """接着提示词写一段。

    参数:
        model、vocab、device: 语言模型、词表、设备
        prompt、count: 提示词；最多再写几个词元

    返回:
        str: 提示词和写的
    """
    ids = torch.tensor([[vocab.eot_token, *vocab.encode_ordinary(prompt)]], device=device)  # (1, t)　结束词元在前：从这里起是新的一篇
    model.eval()
    ids = generate(model, ids, count, model.cfg["context_length"], temperature=0.8, top_k=40, eos_id=vocab.eot_token)
    model.train()
    return vocab.decode(ids[0, 1:].tolist())


# ---- 训练 ----


def train(args):
    """按命令行参数训练；检查点在，就接着练。

    参数:
        args (argparse.Namespace): 命令行参数，见 main

    返回:
        dict: 自查要用的：检查点、日志、模型、留出的损失……

    异常:
        ValueError: 参数、语料、检查点有问题，或损失成了 nan
        OSError: 写不了文件
    """
    config, device = TINY if args.quick else CONFIG, pick_device(args.device)
    index, shards = open_shards(args.corpus, "train", config["context_length"])
    _, held_out = open_shards(args.corpus, "val", config["context_length"])
    vocab, source = load_vocab(args.corpus / "vocab.json"), args.corpus.name.removeprefix("corpus_")
    lengths, config = token_bytes(vocab, index["vocab_size"]), config | {"vocab_size": index["vocab_size"]}
    torch.manual_seed(args.seed)
    model = Qwen3Model(config).to(device)
    optimizers = make_optimizers(model, args.lr)
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint, log, picture = (args.out / f"pretrain_{source}{ending}" for ending in (".pth", ".jsonl", ".png"))
    for part in args.out.glob(f"pretrain_{source}.*.part"):  # 上次没写完的
        part.unlink(missing_ok=True)
    about = {"语料": hashlib.sha256(json.dumps(index["shards"]).encode()).hexdigest(), "种子": args.seed, "批": [args.batch_size, args.accumulate], "模型": config}
    progress = {"step": 0, "epoch": 0, "position": 0, "seconds": 0.0, "running": [0.0, 0], "first_loss": None}
    if checkpoint.exists():
        content = load_checkpoint(checkpoint)
        different = [name for name, value in about.items() if content["about"][name] != value]
        if different:
            raise ValueError(f"{checkpoint} 是另一次训练的（{'、'.join(different)}不同），接不上：用 --out 换个文件夹，或挪走它")
        if args.precision not in ("auto", content["precision"]):
            raise ValueError(f"{checkpoint} 是用 {content['precision']} 练的，接着练也要用它，不能换成 {args.precision}")
        if (content["lr"], content["steps"]) != (args.lr, args.steps):
            print(f"学习率、步数从 {content['lr']:g}、{content['steps']} 改成 {args.lr:g}、{args.steps}：能接着练，但不再是同一次训练")
        model.load_state_dict(content["model"])
        for (optimizer, _), state in zip(optimizers, content["optimizers"]):
            optimizer.load_state_dict(state)
        progress, precision = content["progress"], content["precision"]
        print(f"接着　{checkpoint}：练到第 {progress['step']} 步，第 {progress['epoch'] + 1} 轮的第 {progress['position']:,} 个窗口")
    else:
        precision = pick_precision(args.precision, model, device, args.batch_size)
        torch.manual_seed(args.seed)  # 试精度时用过随机数（dropout）
    total, per_step = sum(map(len, shards)), args.batch_size * args.accumulate * config["context_length"]
    print(f"语料　{args.corpus}　{total:,} 个词元；模型　{sum(p.numel() for p in model.parameters()):,} 个参数，{precision}；{args.steps} 步，每步 {per_step:,} 个词元，合 {args.steps * per_step / total:.1f} 轮", flush=True)
    stream = window_stream(shards, config["context_length"], args.seed, progress["epoch"], progress["position"])
    trim_log(log, progress["step"])
    if checkpoint.exists():
        set_rng_state(content["rng"], device)  # 最后才恢复：前面建模型时用过随机数
    last_saved = last_time = time.monotonic()

    def save():
        """存下接着练所需的一切。"""
        states = {"model": model.state_dict(), "optimizers": [optimizer.state_dict() for optimizer, _ in optimizers], "rng": get_rng_state(device)}
        save_checkpoint(checkpoint, {"about": about, "config": config, "lr": args.lr, "steps": args.steps, "precision": precision, "progress": progress} | states)

    bar = tqdm(total=args.steps, initial=progress["step"], desc="训练", leave=False, disable=None)
    while progress["step"] < args.steps:
        share, total_loss = learning_rate_share(progress["step"], args.steps), 0.0
        for _ in range(args.accumulate):
            (progress["epoch"], progress["position"]), inputs, targets = next_batch(stream, args.batch_size, device)
            with torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext():
                logits = model(inputs)  # (b, t, V)
            loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())  # (b·t, V)，(b·t,)
            (loss / args.accumulate).backward()  # 几小批的梯度加起来，等于一大批的平均：每批一样大，各除以份数就对
            total_loss += loss.item() / args.accumulate
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # 梯度裁剪：偶尔一批特别怪，也只走正常的一步
        if not (math.isfinite(total_loss) and norm.isfinite()):
            good = f"最后一个好的检查点是 {checkpoint}，" if checkpoint.exists() else ""
            raise ValueError(f"第 {progress['step'] + 1} 步的损失是 {total_loss:g}，梯度的长度是 {norm.item():g}，训练停下：{good}把 --lr 改小再来")
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * share
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        progress["step"] += 1
        progress["running"] = [progress["running"][0] + total_loss, progress["running"][1] + 1]
        progress["first_loss"] = progress["first_loss"] or total_loss
        progress["seconds"] += time.monotonic() - last_time
        last_time = time.monotonic()
        bar.update()
        if progress["step"] % args.eval_every == 0 or progress["step"] == args.steps:
            val_loss, bits = evaluate(model, held_out, lengths, args.batch_size, device, EVAL_TOKENS)
            row = {"step": progress["step"], "tokens": progress["step"] * per_step, "epoch": progress["epoch"], "lr": args.lr * share, "train_loss": progress["running"][0] / progress["running"][1]}
            row |= {"val_loss": val_loss, "bits_per_byte": bits, "grad_norm": norm.item(), "sample": say(model, vocab, PROMPTS.get(source, ["The "])[0], device, 60), "seconds": round(progress["seconds"], 1)}
            with open(log, "a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            draw(log, picture, args.corpus.name)
            progress["running"] = [0.0, 0]
            speed = row["tokens"] / max(progress["seconds"], 1e-9)
            tqdm.write(f"第 {row['step']:5} 步　第 {row['epoch'] + 1} 轮　训练 {row['train_loss']:.3f}　留出 {val_loss:.3f}　每字节 {bits:.3f} 比特　每秒 {speed:,.0f} 个词元　{row['sample'][:70]!r}")
        if time.monotonic() - last_saved >= args.save_every or progress["step"] == args.steps:
            save()
            last_saved = time.monotonic()
    bar.close()
    loss, bits = evaluate(model, held_out, lengths, args.batch_size, device, 10**9)
    print(f"\n练完了　{progress['seconds'] / 60:.1f} 分钟　全部留出的文档：损失 {loss:.3f}，每字节 {bits:.3f} 比特　{checkpoint}　{picture}")
    return {"checkpoint": checkpoint, "log": log, "model": model, "vocab": vocab, "loss": loss, "bits": bits, "shards": shards, "held_out": held_out, "lengths": lengths, "progress": progress, "source": source, "device": device}


def check(run):
    """写几段，再自查。

    参数:
        run (dict): train 的结果
    """
    baseline = unigram_bits(run["shards"], run["held_out"], run["lengths"])
    print(f"只数词元次数、什么上文也不看，每字节要 {baseline:.3f} 比特；练出来的 {run['bits']:.3f}，" + ("学到了上文" if run["bits"] < baseline else "还不如它：练的步数太少"))
    torch.manual_seed(1)
    for prompt in PROMPTS.get(run["source"], ["The ", "他"]):
        print(f"\n── {prompt!r} 之后 ──\n{say(run['model'], run['vocab'], prompt, run['device'])}")
    print("\n这个数字对吗？")
    first, size = run["progress"]["first_loss"], len(run["lengths"])
    confirm(f"第一步的损失 {first:.2f} 接近 ln {size} = {math.log(size):.2f}", abs(first - math.log(size)) < 0.5, "初始化太大，logits 相差悬殊")
    saved = load_checkpoint(run["checkpoint"])["model"]
    confirm("检查点里的权重与内存里的逐位相同", all(torch.equal(saved[name], value.cpu()) for name, value in run["model"].state_dict().items()), "练完之后没有再存")
    t = run["model"].cfg["context_length"]
    ids = np.concatenate([shard[i + 1 : i + t + 1] for shard in run["held_out"] for i in range(0, len(shard) - t, t)]).astype(np.int64)
    text = len(b"".join(run["vocab"].decode_single_token_bytes(i) for i in ids.tolist() if i != run["vocab"].eot_token))
    confirm(f"另算一遍：{len(ids):,} 个词元解回来是 {text:,} 个字节，损失 × 个数 × log₂e ÷ 字节 = {run['loss'] * len(ids) * math.log2(math.e) / text:.3f}", abs(run["loss"] * len(ids) * math.log2(math.e) / text - run["bits"]) < 1e-3, "除错了：要除以字节，不是词元，也不是字符")


def main():
    """训练，或让练好的写一段。"""
    parser = argparse.ArgumentParser(description="实验　在比内存大的语料上预训练")
    parser.add_argument("--corpus", type=Path, help="exp_corpus_prepare.py 写的文件夹（默认：ch05/outputs/corpus_python）")
    parser.add_argument("--out", type=Path, default=OUTPUTS, help="检查点、日志、图写到哪个文件夹（默认：ch05/outputs）")
    parser.add_argument("--steps", type=int, help=f"一共几步（默认：{STEPS}）")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help=f"一小批几个窗口（默认：{BATCH_SIZE}）")
    parser.add_argument("--accumulate", type=int, default=ACCUMULATE, help=f"攒几小批才更新一次（默认：{ACCUMULATE}）")
    parser.add_argument("--lr", type=float, default=LR, help=f"最大的学习率（默认：{LR}）")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"], help="精度（默认：auto，两种都试，用快的）")
    parser.add_argument("--eval-every", type=int, help="隔几步评估一次（默认：总步数的二十分之一）")
    parser.add_argument("--save-every", type=float, default=30, help="最多隔几秒存一次（默认：30）")
    parser.add_argument("--say", help="不训练，用检查点接着这个提示词写一段")
    parser.add_argument("--seed", type=int, default=123, help="随机种子（默认：123）")
    parser.add_argument("--device", default="auto", help="auto、mps、cuda 或 cpu（默认：auto）")
    parser.add_argument("--quick", action="store_true", help="极小的模型、自带的短篇，40 步：看流程，不下结论")
    args = parser.parse_args()
    args.corpus = args.corpus or OUTPUTS / ("corpus_bytes" if args.quick else "corpus_python")
    args.steps = args.steps or (40 if args.quick else STEPS)
    args.eval_every = args.eval_every or max(1, args.steps // (4 if args.quick else 20))
    try:
        if min(args.steps, args.batch_size, args.accumulate, args.eval_every) < 1 or not args.lr > 0 or not 0 <= args.seed < 2**63:
            raise ValueError("--steps、--batch-size、--accumulate、--eval-every 至少是 1，--lr 要大于 0，--seed 不能是负的")
        if args.quick and not (args.corpus / "index.json").exists():
            quick_shards(args.corpus)
        if args.say is not None:
            checkpoint = args.out / f"pretrain_{args.corpus.name.removeprefix('corpus_')}.pth"
            if not checkpoint.exists():
                raise ValueError(f"找不到 {checkpoint}：先训练，去掉 --say")
            content, device = load_checkpoint(checkpoint), pick_device(args.device)
            model = Qwen3Model(content["config"]).to(device)
            model.load_state_dict(content["model"])
            torch.manual_seed(args.seed)
            print(say(model, load_vocab(args.corpus / "vocab.json"), args.say, device, 200))
        else:
            check(train(args))
            if args.quick:
                print("--quick：看流程，不下结论")
    except KeyboardInterrupt:
        print("\n停下了。再运行同一条命令，从最后一个检查点接着练")
        sys.exit(130)
    except (ValueError, OSError) as error:
        full = isinstance(error, OSError) and error.errno  # 系统报的是英文；我们自己报的没有 errno
        parser.error(f"读写文件时出错（{error.strerror}），多半是磁盘满了：腾出空间，再运行同一条命令，会接着练" if full else str(error))


if __name__ == "__main__":
    main()
