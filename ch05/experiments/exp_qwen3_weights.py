"""第 5 章 · 实验　把 hub 上的 Qwen3 装进自己的代码：一个词元只用 8 个专家，内存里只放 8 个行吗？

问题：　Qwen3-30B-A3B 每层有 128 个专家，一个词元只用 8 个；一句话有 64 个词元，一层里用到了几个专家？
先猜：　8 个，64 个，还是几乎全部？装的时候把专家的次序打乱，模型会变吗？（先想 10 秒，再运行）
看点：　① 左图和第一张表：用到的专家随词元数很快涨满，所以省下的是计算，不是内存；② 第二张表和右图：装错了不报错，概率错了多少；
        专家换了次序，只要路由的行跟着换，一点不变；③ norm_topk_prob 不在权重里，只在 config.json 里；④ --weights：先说要多少内存，装不下就不装。
动手改：1. 把 hub_like 里的 0.5 + torch.rand 换成 torch.ones（归一化的缩放全是 1，像没训练过的）：「q_norm 与 k_norm 对调」看不出来了，自查变成 ✗。
        2. 把 HUB_CONFIG 里的 "num_experts_per_tok": 3 改成 6（每个词元用全部专家）：norm_topk_prob 写反也一样，因为选中的就是全部；自查变成 ✗。
        3. 把 HUB_CONFIG 里的 "use_sliding_window": False 改成 True：这里没有写它，程序拒绝，不去猜。

运行：
    python ch05/experiments/exp_qwen3_weights.py            # 没有权重：照 hub 的样子造一个小的；图片写到 ch05/outputs/
    python ch05/experiments/exp_qwen3_weights.py --weights 文件夹 --ask "中国的首都是哪里？"    # 下载好的 Qwen3，要 pip install tokenizers
    约 6 秒，0.4 GB（2 核 CPU）

文件夹里要有 config.json、tokenizer.json 和 model.safetensors（大的分成几份，外加 model.safetensors.index.json）。
这里没有 KV 缓存，每写一个词元，前面的都重算一遍；有缓存的，见 exp_real_llm.py。

形状记号：b 批大小　t 序列长度　n 词元数　d 嵌入维度　h 头数　g 键和值有几份　k 每个头的维度　e 专家数　j 每个词元用几个专家　V 词表大小
"""

import argparse
import json
import os
import re
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
# 改这里：没有权重时，照这个样子造一个小的 Qwen3-MoE；写法与 hub 的 config.json 相同。
HUB_CONFIG = {
    "model_type": "qwen3_moe", "vocab_size": 256, "max_position_embeddings": 64, "hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 20, "num_hidden_layers": 3, "intermediate_size": 96, "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0, "tie_word_embeddings": False,
    "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "norm_topk_prob": True, "use_sliding_window": False,
}  # fmt: skip
LENGTHS = [1, 2, 4, 8, 16, 32, 64, 128, 256]  # 数用到几个专家：这么多个词元


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


# region 沿用 ch04/experiments/exp_moe.py: FeedForward, MoEFeedForward
class FeedForward(nn.Module):
    """SwiGLU 前馈网络：中间那一层分成两路，一路过 SiLU 当闸门，乘在另一路上。（详解见 ch04/experiments/exp_moe.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.fc1 = nn.Linear(cfg["emb_dim"], cfg["hidden_dim"], bias=False)
        self.fc2 = nn.Linear(cfg["emb_dim"], cfg["hidden_dim"], bias=False)
        self.fc3 = nn.Linear(cfg["hidden_dim"], cfg["emb_dim"], bias=False)

    def forward(self, x):
        return self.fc3(nn.functional.silu(self.fc1(x)) * self.fc2(x))


class MoEFeedForward(nn.Module):
    """混合专家（mixture of experts）：路由给每个词元挑 j 个专家，只算这几个，按概率加起来。（详解见 ch04/experiments/exp_moe.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.num_experts, self.num_experts_per_tok = cfg["num_experts"], cfg["num_experts_per_tok"]
        if not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise ValueError(f"一共 {self.num_experts} 个专家，每个词元不能用 {self.num_experts_per_tok} 个")
        self.norm_topk_prob = cfg.get("norm_topk_prob", True)
        emb_dim, hidden_dim = cfg["emb_dim"], cfg["hidden_dim"]
        self.gate = nn.Linear(emb_dim, self.num_experts, bias=False)
        self.fc1 = nn.ModuleList([nn.Linear(emb_dim, hidden_dim, bias=False) for _ in range(self.num_experts)])
        self.fc2 = nn.ModuleList([nn.Linear(emb_dim, hidden_dim, bias=False) for _ in range(self.num_experts)])
        self.fc3 = nn.ModuleList([nn.Linear(hidden_dim, emb_dim, bias=False) for _ in range(self.num_experts)])
        self.load = self.balance_loss = self.last_choice = None

    def forward(self, x):
        flat = x.flatten(0, 1)  # (n, d)
        scores = self.gate(flat)  # (n, e)
        everyone = torch.softmax(scores, dim=-1)  # (n, e)
        top_scores, top_experts = scores.topk(self.num_experts_per_tok, dim=-1)  # (n, j)，(n, j)
        probs = torch.softmax(top_scores, dim=-1) if self.norm_topk_prob else everyone.gather(1, top_experts)  # (n, j)
        out = torch.zeros_like(flat)  # (n, d)
        for expert in range(self.num_experts):
            chosen = top_experts == expert  # (n, j)
            rows = chosen.any(dim=-1).nonzero().flatten()  # (m,)
            if len(rows) == 0:
                continue
            inputs = flat[rows]  # (m, d)
            hidden = nn.functional.silu(self.fc1[expert](inputs)) * self.fc2[expert](inputs)  # (m, hidden)
            out = out.index_add(0, rows, self.fc3[expert](hidden) * probs[chosen][:, None])  # (n, d)
        self.load = torch.bincount(top_experts.flatten(), minlength=self.num_experts) / top_experts.numel()  # (e,)
        self.balance_loss = self.num_experts * (self.load * everyone.mean(dim=0)).sum()
        self.last_choice = top_experts.detach()
        return out.view_as(x)  # (b, t, d)


# endregion


# region 沿用 ch05/experiments/exp_gpt_to_llama.py: RMSNorm, assign, gigabytes
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


def assign(left, right, tensor_name="unknown"):
    """把文件里的一个张量变成模型的参数：形状不同、有 nan 或无穷大，就说是哪一个。（详解见 ch05/experiments/exp_gpt_to_llama.py）"""
    if left.shape != right.shape:
        raise ValueError(f"{tensor_name} 的形状不同：模型里是 {tuple(left.shape)}，文件里是 {tuple(right.shape)}，config.json 与权重不是一个模型")
    if not torch.stack(right.aminmax()).isfinite().all():
        raise ValueError(f"{tensor_name} 里有 nan 或无穷大：文件坏了，或存它的训练已经发散，换一个检查点")
    return nn.Parameter(right.to(left.dtype, copy=True))


def gigabytes(numbers, dtype):
    """这么多个数占几 GB（2 的 30 次方字节，与原书仓库相同）。（详解见 ch05/experiments/exp_gpt_to_llama.py）"""
    return numbers * dtype.itemsize / 2**30


# endregion


# region 沿用 ch05/experiments/exp_qwen3.py: QWEN3_CONFIG_30B_A3B, GroupedQueryAttention, TransformerBlock, Qwen3Model, count_parameters
QWEN3_CONFIG_30B_A3B = {
    "vocab_size": 151_936, "context_length": 262_144, "emb_dim": 2048, "n_heads": 32, "n_layers": 48, "head_dim": 128,
    "qk_norm": True, "n_kv_groups": 4, "rope_base": 10_000_000.0, "norm_eps": 1e-6, "tied": False,
    "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
}


class GroupedQueryAttention(nn.Module):
    """Qwen3 的注意力：与 Llama 差两处，每个头的维度自己定，查询和键打分之前先各归一化一次（QK-norm）。（详解见 ch05/experiments/exp_qwen3.py）"""

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

    def forward(self, x, mask, cos, sin):
        b, t, _ = x.shape
        queries, keys = self.queries_and_keys(x, cos, sin)
        values = self.W_value(x).view(b, t, self.num_kv_groups, self.head_dim).transpose(1, 2)  # (b, g, t, k)
        keys = keys.repeat_interleave(self.num_heads // self.num_kv_groups, dim=1)  # (b, h, t, k)
        values = values.repeat_interleave(self.num_heads // self.num_kv_groups, dim=1)  # (b, h, t, k)
        scores = (queries @ keys.transpose(2, 3)).masked_fill(mask, -torch.inf)  # (b, h, t, t)
        weights = torch.softmax(scores / self.head_dim**0.5, dim=-1)  # (b, h, t, t)
        context = (weights @ values).transpose(1, 2).reshape(b, t, self.d_out)  # (b, t, h·k)
        return self.out_proj(context)


class TransformerBlock(nn.Module):
    """Qwen3 的 Transformer 块：骨架与 Llama 相同，注意力换成上面的，前馈网络可以换成混合专家。（详解见 ch05/experiments/exp_qwen3.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.att = GroupedQueryAttention(cfg["emb_dim"], cfg["n_heads"], cfg["n_kv_groups"], cfg["head_dim"], cfg["qk_norm"], cfg["norm_eps"])
        self.ff = MoEFeedForward({**cfg, "hidden_dim": cfg["moe_intermediate_size"]}) if cfg.get("num_experts", 0) else FeedForward(cfg)
        self.norm1 = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])
        self.norm2 = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])

    def forward(self, x, mask, cos, sin):
        x = x + self.att(self.norm1(x), mask, cos, sin)  # (b, t, d)
        return x + self.ff(self.norm2(x))


class Qwen3Model(nn.Module):
    """Qwen3：词嵌入 → 一摞 Transformer 块 → RMSNorm → 输出层。密集的和 MoE 的是同一个类，差别全在配置里。（详解见 ch05/experiments/exp_qwen3.py）"""

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

    def forward(self, in_idx):
        t = in_idx.shape[1]
        if t > len(self.cos):
            raise ValueError(f"输入有 {t} 个词元，超过了模型的上下文长度 {len(self.cos)}")
        mask = torch.ones(t, t, dtype=torch.bool, device=in_idx.device).triu(diagonal=1)  # (t, t)
        x = self.tok_emb(in_idx)  # (b, t, d)
        for block in self.trf_blocks:
            x = block(x, mask, self.cos, self.sin)  # (b, t, d)
        return self.out_head(self.final_norm(x))  # (b, t, V)


def count_parameters(model):
    """数参数：一共多少，其中词嵌入和输出层多少，一个词元用得到的多少（只有 MoE 少于全部）。（详解见 ch05/experiments/exp_qwen3.py）"""
    table, tied = model.tok_emb.weight.numel(), model.cfg["tied"]
    total = sum(p.numel() for p in model.parameters()) - (table if tied else 0)
    idle = 0
    for ff in (block.ff for block in model.trf_blocks if isinstance(block.ff, MoEFeedForward)):
        experts = sum(p.numel() for fc in (ff.fc1, ff.fc2, ff.fc3) for p in fc.parameters())
        idle += experts * (ff.num_experts - ff.num_experts_per_tok) // ff.num_experts
    return {"total": total, "embedding": table if tied else 2 * table, "active": total - idle}


# endregion


# region 沿用 ch05/experiments/exp_llama_weights.py: HubWeights, read_json, write_json
class HubWeights:
    """一个文件夹里的 safetensors，当成"名字 → 张量"的字典：用到哪个才读哪个，内存里只多一个张量。（详解见 ch05/experiments/exp_llama_weights.py）"""

    def __init__(self, folder):
        index, self.files, removed = folder / "model.safetensors.index.json", {}, set()
        names = ["model.safetensors"]
        if index.is_file():
            names = sorted(set(read_json(index).get("weight_map", {}).values()))
        for name in names:
            try:
                file = safe_open(folder / name, "pt")
            except (OSError, SafetensorError):
                raise ValueError(f"读不了 {folder / name}：没有这个文件，或没有下载完") from None
            for key in file.keys():
                removed |= set(re.findall(r"\b(?:_orig_mod|module)\.", key))
                plain = re.sub(r"\b(?:_orig_mod|module)\.", "", key)
                if plain in self.files:
                    raise ValueError(f"{folder} 里有两个 {plain}：不知道该用哪一个")
                self.files[plain] = file, key
        if removed:
            print(f"名字里多出来的 {'、'.join(sorted(removed))} 去掉了")

    def __iter__(self):
        return iter(self.files)

    def __getitem__(self, name):
        return self.files[name][0].get_tensor(self.files[name][1])


def read_json(path):
    """读一个 JSON 文件，读不了就说是哪一个。（详解见 ch05/experiments/exp_llama_weights.py）"""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"读不了 {path}：没有这个文件，或不是 JSON")
    return content


def write_json(path, content):
    """写一个 JSON 文件。（详解见 ch05/experiments/exp_llama_weights.py）"""
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


# endregion


# region 沿用 setup/device_check.py: total_memory
def total_memory():
    """这台机器的内存。（详解见 setup/device_check.py）"""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):
        return None


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


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def check_memory(total, dtype):
    """装之前先算要多少内存，印出来；装不下就现在说，不要装到一半才死。

    参数:
        total (int): 多少个参数，共用的只算一次
        dtype (torch.dtype): 装成哪种精度

    异常:
        ValueError: 装不下
    """
    need, memory = gigabytes(total, dtype) + 1.0, total_memory()  # 1 GB 给 PyTorch、RoPE 的表和正在装的那一个；映射进来的文件不算，系统随时可以收回
    print(f"{total:,} 个参数；装成 {str(dtype)[6:]} 约要 {need:.1f} GB 内存" + (f"，这台机器有 {memory:.1f} GB" if memory else ""))
    if memory and need > memory:
        raise ValueError(f"装不下：约要 {need:.1f} GB 内存，这台机器只有 {memory:.1f} GB；" + ("请换小一点的模型" if dtype == torch.bfloat16 else "请加上 --dtype bfloat16，或换小一点的模型"))


def qwen_config(folder):
    """把 hub 的 config.json 翻成原书的名字；这份代码没有写的零件，宁可拒绝，也不装成另一个模型。

    参数:
        folder (Path): 从 hub 下载的文件夹

    返回:
        dict: Qwen3Model 的配置

    异常:
        ValueError: 读不了，不是 Qwen3，或有没有写的零件
    """
    raw = read_json(folder / "config.json")
    kind, rope = raw.get("model_type"), raw.get("rope_parameters") or {"rope_theta": raw.get("rope_theta")} | (raw.get("rope_scaling") or {})  # 新旧两种写法
    odd = {
        f"model_type 是 {kind}": kind not in ("qwen3", "qwen3_moe"),
        "带偏置": raw.get("attention_bias"),
        "有滑动窗口": raw.get("use_sliding_window"),
        f"RoPE 是 {rope.get('rope_type', rope.get('type'))}": rope.get("rope_type", rope.get("type", "default")) != "default",
        "有的层不用专家": raw.get("mlp_only_layers") or raw.get("decoder_sparse_step", 1) != 1,
    }
    if any(odd.values()):
        raise ValueError(f"{folder / 'config.json'}：{next(title for title, wrong in odd.items() if wrong)}，这个脚本只会 Qwen3 的写法")
    names = {"vocab_size": "vocab_size", "context_length": "max_position_embeddings", "emb_dim": "hidden_size", "n_heads": "num_attention_heads", "n_layers": "num_hidden_layers"}
    names |= {"hidden_dim": "intermediate_size", "head_dim": "head_dim", "n_kv_groups": "num_key_value_heads", "norm_eps": "rms_norm_eps", "tied": "tie_word_embeddings"}
    if kind == "qwen3_moe":
        # norm_topk_prob：概率只在选中的专家之间分（True），还是取全部专家的 softmax 里的那几份。两种都有人用，形状一样，只能看配置。
        names |= {name: name for name in ("num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob")}
        names["num_experts"] = "num_local_experts" if "num_local_experts" in raw else "num_experts"  # 新旧两种写法
    try:
        return {ours: raw[theirs] for ours, theirs in names.items()} | {"rope_base": float(rope["rope_theta"]), "qk_norm": True}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'config.json'} 里缺 {error.args[0]}，不是 Qwen3 的配置") from None


def assign_all(model, names, params):
    """照名字表把张量一个一个装进去；少一个、多一个都拒绝：装得进去不等于是同一个模型。

    参数:
        model (nn.Module): 模型，可以建在 meta 上
        names (dict): 我们的名字 → 文件里的名字
        params (dict 或 HubWeights): 名字 → 张量

    异常:
        ValueError: 少了、多了一个张量，形状不同，或有不是有限的数
    """
    extra, missing = [name for name in params if name not in names.values()], [name for name in names.values() if name not in params]
    if extra or missing:
        raise ValueError(f"权重里{'没有' if missing else '多出'} {(missing or extra)[0]}：config.json 与权重不是一个模型")
    for ours, theirs in names.items():
        place, _, last = ours.rpartition(".")
        module = model.get_submodule(place)
        setattr(module, last, assign(getattr(module, last), params[theirs], theirs))


def qwen_names(param_config, stored_head):
    """我们的名字 → hub 的名字：一一对上，都不用转置，Q、K 已经是对半摆法。

    参数:
        param_config (dict): 模型配置
        stored_head (bool): 文件里有没有输出层

    返回:
        dict: 如 "trf_blocks.0.att.q_norm.scale" → "model.layers.0.self_attn.q_norm.weight"
    """
    layer = {
        "att.W_query.weight": "self_attn.q_proj.weight", "att.W_key.weight": "self_attn.k_proj.weight",
        "att.W_value.weight": "self_attn.v_proj.weight", "att.out_proj.weight": "self_attn.o_proj.weight",
        "att.q_norm.scale": "self_attn.q_norm.weight", "att.k_norm.scale": "self_attn.k_norm.weight",  # 各 k 个数；对调了形状也对
        "norm1.scale": "input_layernorm.weight", "norm2.scale": "post_attention_layernorm.weight",
    }  # fmt: skip
    # 过 SiLU 的是 gate_proj；它与 up_proj 形状相同，装反了不报错。MoE 的 mlp.gate 是另一回事：那是路由。
    experts = param_config.get("num_experts", 0)
    layer |= {"ff.gate.weight": "mlp.gate.weight"} if experts else {}
    for ours, theirs in (("fc1", "gate_proj"), ("fc2", "up_proj"), ("fc3", "down_proj")):
        layer |= {f"ff.{ours}.{e}.weight": f"mlp.experts.{e}.{theirs}.weight" for e in range(experts)} or {f"ff.{ours}.weight": f"mlp.{theirs}.weight"}
    names = {"tok_emb.weight": "model.embed_tokens.weight", "final_norm.scale": "model.norm.weight"}
    names |= {f"trf_blocks.{i}.{ours}": f"model.layers.{i}.{theirs}" for i in range(param_config["n_layers"]) for ours, theirs in layer.items()}
    return names | ({"out_head.weight": "lm_head.weight"} if stored_head else {})


def load_weights_into_qwen(model, param_config, params):
    """把 hub 的 Qwen3 权重装进 Qwen3Model，名字由 qwen_names 一一对上。

    参数:
        model (Qwen3Model): 模型，可以建在 meta 上
        param_config (dict): 模型配置
        params (dict 或 HubWeights): 名字 → 张量，如 "model.layers.0.self_attn.q_norm.weight"

    异常:
        ValueError: 少了、多了一个张量，形状不同，或有不是有限的数

    出处: 原书仓库 ch05/11_qwen3
    """
    tied, stored_head = param_config["tied"], "lm_head.weight" in params
    assign_all(model, qwen_names(param_config, stored_head or not tied), params)
    if tied:
        model.out_head.weight = model.tok_emb.weight  # 同一个 Parameter，不是复制，只占一份内存
        print("输出层与词嵌入共用一份权重：" + ("文件里又存了一份 lm_head.weight，没有用它" if stored_head else "文件里没有 lm_head.weight"))  # 0.6B 的文件里就存了两份，数是一样的
    model.cos, model.sin = compute_rope_params(model.trf_blocks[0].att.head_dim, param_config["rope_base"], param_config["context_length"])  # 建在 meta 上时，表里也没有数


def load_qwen(folder, dtype):
    """从 hub 的文件夹装一个 Qwen3；先说要多少内存，装不下就不装。

    参数:
        folder (Path): 有 config.json 和 safetensors（一个，或分成几份）
        dtype (torch.dtype): 装成哪种精度

    返回:
        Qwen3Model: 可以用的模型

    异常:
        ValueError: 装不下、读不了，或不是 Qwen3
    """
    cfg, params = qwen_config(folder), HubWeights(folder)
    with torch.device("meta"):
        model = Qwen3Model(cfg).to(dtype).eval()
    check_memory(count_parameters(model)["total"], dtype)
    load_weights_into_qwen(model, cfg, params)
    return model


def answer(load, template, stop, args):
    """装读者的权重，按聊天模板问一句，贪心地回答；分词要 tokenizers。

    参数:
        load (callable): 装模型的函数，如 load_qwen
        template (str): 聊天模板，{} 的地方放问题
        stop (str): 写到哪个特殊词元为止
        args (Namespace): 命令行参数：weights、ask、tokens、dtype

    异常:
        ValueError: 没有 tokenizers 或 tokenizer.json，或装不了
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ValueError("要把文字变成编号，先 pip install tokenizers") from None
    file = args.weights / "tokenizer.json"
    if not file.is_file():
        raise ValueError(f"没有 {file}：要的是从 hub 下载的整个文件夹")
    tokenizer, model = Tokenizer.from_file(str(file)), load(args.weights, getattr(torch, args.dtype))
    # 模板里的特殊词元写成文字，分词器认得；add_special_tokens=False：不要再自动加一遍。
    ids = torch.tensor([tokenizer.encode(template.format(args.ask), add_special_tokens=False).ids])  # (1, t)
    out = generate(model, ids, args.tokens, model.cfg["context_length"], eos_id=tokenizer.token_to_id(stop))
    print(f"问　{args.ask}\n答　{tokenizer.decode(out[0, ids.shape[1] :].tolist())}")


def hub_like(folder):
    """照 hub 的样子造一个小的 Qwen3-MoE，数是随机的，分成两份。

    参数:
        folder (Path): 写到哪里

    返回:
        dict: 名字 → 张量
    """
    cfg = qwen_config(write_json(folder / "config.json", HUB_CONFIG).parent)
    torch.manual_seed(123)
    model = Qwen3Model(cfg)
    tensors = {theirs: 2 * model.get_parameter(ours).detach() for ours, theirs in qwen_names(cfg, True).items()}
    # 训练过的归一化，缩放各不相同；全是 1 的，装反了也看不出来。
    tensors = {name: 0.5 + torch.rand(tensor.shape) if "norm" in name else tensor for name, tensor in tensors.items()}
    files = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for file in sorted(set(files.values())):
        save_file({name: tensor for name, tensor in tensors.items() if files[name] == file}, folder / file)
    write_json(folder / "model.safetensors.index.json", {"weight_map": files})
    return tensors


def variants(tensors, cfg):
    """装的时候换一样：每一种的名字、形状都对，一种也不报错。

    参数:
        tensors (dict): 名字 → 张量，对的
        cfg (dict): 配置，对的

    返回:
        dict: 换了什么 → 一对：张量、配置
    """

    def exchanged(a, b):  # 名字里的 a 与 b 对调
        return {name.replace(a, "?").replace(b, a).replace("?", b): tensor for name, tensor in tensors.items()}

    last = cfg["num_experts"] - 1
    reversed_experts = {re.sub(r"experts\.(\d+)", lambda found: f"experts.{last - int(found[1])}", name): tensor for name, tensor in tensors.items()}
    reversed_router = {name: tensor.flip(0) if "mlp.gate." in name else tensor for name, tensor in reversed_experts.items()}  # 路由：第几行给第几个专家打分
    return {
        "专家倒过来排，路由的行也倒过来": (reversed_router, cfg),
        "专家倒过来排，路由没有动": (reversed_experts, cfg),
        "gate_proj 与 up_proj 对调": (exchanged("gate_proj", "up_proj"), cfg),
        "q_norm 与 k_norm 对调": (exchanged("q_norm", "k_norm"), cfg),
        "norm_topk_prob 写反": (tensors, cfg | {"norm_topk_prob": not cfg["norm_topk_prob"]}),
        "每个词元少用一个专家": (tensors, cfg | {"num_experts_per_tok": cfg["num_experts_per_tok"] - 1}),
        "RoPE 的底数写成 1 万": (tensors, cfg | {"rope_base": 1e4}),
    }


@torch.no_grad()
def compare(right, tensors, ids):
    """每一种装法都装一遍，与对的比。

    参数:
        right (Qwen3Model): 装对的
        tensors (dict): 同一批张量
        ids (Tensor): 词元编号，(b, t)

    返回:
        dict: 换了什么 → 下一个词元的概率错了多少（总变差：0 是没错，1 是毫不相干）
    """
    truth, found = torch.softmax(right(ids), dim=-1), {}  # (b, t, V)
    for title, (changed, settings) in variants(tensors, right.cfg).items():
        model = Qwen3Model(settings).eval()
        load_weights_into_qwen(model, settings, changed)
        found[title] = (torch.softmax(model(ids), dim=-1) - truth).abs().sum(dim=-1).mean().item() / 2
    return found


@torch.no_grad()
def experts_used(repeats=10):
    """一层 128 个专家、每个词元用 8 个：几个词元一共用到几个专家？路由是随机的，没有训练过。

    参数:
        repeats (int): 换几次路由和输入，取平均

    返回:
        list[float]: LENGTHS 里每个词元数，用到几个
    """
    cfg, used = {**QWEN3_CONFIG_30B_A3B, "emb_dim": 64, "hidden_dim": 1}, []  # 只看选了谁，专家本身小一点不要紧
    for seed in range(repeats):
        torch.manual_seed(seed)
        layer = MoEFeedForward(cfg)
        layer(torch.randn(1, max(LENGTHS), 64))  # (b, t, d)
        used.append([len(layer.last_choice[:n].unique()) for n in LENGTHS])
    return torch.tensor(used, dtype=torch.float).mean(dim=0).tolist()


def draw(used, expected, found, path):
    """左：用到几个专家与词元数；右：每一种装法，概率错了多少。

    参数:
        used (list[float]): 数出来的
        expected (list[float]): 公式算的
        found (dict): compare 的结果
        path (Path): 图片写到哪里
    """
    figure, (experts, wrong) = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
    experts.plot(LENGTHS, expected, color="0.6", label=r"机会均等：$128\,(1-(1-8/128)^n)$")
    experts.plot(LENGTHS, used, "o", label="数出来的")
    experts.axhline(128, color="black", linestyle=":", label="一层有 128 个")
    experts.set(xscale="log", xlabel="几个词元", ylabel="一层里用到几个专家", title="一个词元只用 8 个，一句话几乎全用到", xticks=LENGTHS, xticklabels=LENGTHS)
    experts.minorticks_off()
    experts.legend()
    wrong.bar_label(wrong.barh(list(found), list(found.values())), fmt="%.3f", padding=3)
    wrong.set(xlabel="下一个词元的概率错了多少（总变差）", title="名字、形状都对，一个错也不报", xlim=(0, 1.15 * max(found.values())))
    wrong.invert_yaxis()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def demonstrate():
    """数用到几个专家；造一个小的，装对一遍，再各换一样。"""
    torch.set_num_threads(1)  # 小矩阵，几个线程互相等
    cfg = QWEN3_CONFIG_30B_A3B
    with torch.device("meta"):  # 每层一样大：建一层的和两层的，就知道 48 层的有多少
        one, two = (count_parameters(Qwen3Model({**cfg, "n_layers": layers})) for layers in (1, 2))
    counts = {key: one[key] + (two[key] - one[key]) * (cfg["n_layers"] - 1) for key in one}
    e, j = cfg["num_experts"], cfg["num_experts_per_tok"]
    experts = (counts["total"] - counts["active"]) * e // (e - j)  # 全部专家的参数：用不到的那 e − j 个，占其中的 (e − j) / e
    used, expected = experts_used(), [e * (1 - (1 - j / e) ** n) for n in LENGTHS]
    print(f"30B-A3B 一共 {counts['total'] / 1e9:.1f}B 个参数，其中专家 {experts / 1e9:.1f}B。路由没有训练过，各个专家机会均等；训练过的会偏心，涨得慢一点")
    print("词元数　一层用到的专家：数出来的　公式算的　　这些词元一共用到的参数")
    for n, counted, formula in zip(LENGTHS, used, expected):
        print(f"{n:5}{counted:24.1f}{formula:11.1f}{(counts['total'] - experts * (1 - counted / e)) / 1e9:16.1f}B")
    print(f"所以：{n} 个词元用到了 {(counts['total'] - experts * (1 - used[-1] / e)) / 1e9:.1f}B 个，内存里要放得下；每写一个词元，只算 {counts['active'] / 1e9:.2f}B 个")

    print("\n没有给 --weights：照 hub 的样子造一个小的，数是随机的")
    ids = torch.randint(256, (16, 64), generator=torch.Generator().manual_seed(123))  # (b, t)
    with tempfile.TemporaryDirectory() as place:
        tensors = hub_like(Path(place))
        model = load_qwen(Path(place), torch.float32)
    found = compare(model, tensors, ids)
    print("换一样，一个错也不报。下一个词元的概率错了多少（0 是没错，1 是毫不相干）：")
    for title, value in found.items():
        print(f"{value:8.4f}　{title}")
    draw(used, expected, found, OUTPUTS / "qwen3_weights.png")
    print(f"图片已写到 {OUTPUTS / 'qwen3_weights.png'}")

    print("\n这个数字对吗？")
    harmless, *wrong = found.values()
    confirm("数出来的专家，与机会均等的公式差不到 3 个", max(abs(a - b) for a, b in zip(used, expected)) < 3, "路由偏心，或重复的词元算了几遍")
    same = all(torch.equal(model.get_parameter(ours), tensors[theirs]) for ours, theirs in qwen_names(model.cfg, True).items())
    confirm("装进去的每个数，与文件里的相同，分成两份也一样", same, "名字对错了")
    confirm("专家没有次序：与路由的行一起换，输出不变", harmless < 1e-5, "只换了一边")
    confirm("其余的每一种都看得出来", min(wrong) > 1e-3, "归一化的缩放全是 1，或每个专家都用上了，换了也一样")


def main():
    """没有 --weights：数专家，造一个小的试；有就装真的，回答一句。"""
    parser = argparse.ArgumentParser(description="实验　把 hub 上的 Qwen3 装进自己的代码")
    parser.add_argument("--weights", type=Path, help="从 hub 下载好的 Qwen3 的文件夹；不写就造一个小的")
    parser.add_argument("--ask", default="中国的首都是哪里？", help="装好以后问它什么")
    parser.add_argument("--tokens", type=int, default=60, help="最多回答几个词元（默认：60）")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="装成哪种精度；bfloat16 省一半内存（默认：float32）")
    parser.add_argument("--quick", action="store_true", help="与默认的一样：本来就只要几秒")
    args = parser.parse_args()
    if not 1 <= args.tokens <= 4096:
        parser.error(f"--tokens 应在 1 到 4096 之间，不能是 {args.tokens}")
    # 聊天模板：谁说的话，用特殊词元包起来；一对空的 <think> 表示不要先想一大段。
    template = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    try:
        answer(load_qwen, template, "<|im_end|>", args) if args.weights else demonstrate()
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
