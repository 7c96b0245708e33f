"""第 5 章 · 实验　把 Hugging Face 的 Llama 装进自己的代码：装错一处，看得出来吗？

问题：　名字、设置里错一处，是报错，还是悄悄地算错？装一个 Llama 要多少内存？
先猜：　gate_proj 与 up_proj 对调、RoPE 的底数写错、头数写成一半：哪几样会报错？（先想 10 秒，再运行）
看点：　① 表：十种装错法，一个错也不报，下一个词元却变了多少；② 左图：只错在位置上的三种，第 1 个词元分毫不差：只拿一个词元试，试不出来；
        ③ 右图：Llama 3.1 把上下文拉长 16 倍，只压慢的那几对，快的一点不动；④ --weights：先说要多少内存，装不下就不装。
动手改：1. 把 hub_like 里的 0.5 + torch.rand 换成 torch.ones（归一化的缩放全是 1，像没训练过的）：「两个归一化对调」就看不出来了，自查变成 ✗。
        2. 把 mistakes 里的 rope_base=10_000 改成 rope_base=500_000（就是对的）：那一行变成 0，自查变成 ✗。
        3. 把 HUB_CONFIG 里的 "rope_type": "llama3" 改成 "rope_type": "yarn"（另一种拉长的办法）：这里没有写它，程序拒绝，不去猜。

运行：
    python ch05/experiments/exp_llama_weights.py            # 没有权重：照 Hugging Face 的样子造一个小的；图片写到 ch05/outputs/
    python ch05/experiments/exp_llama_weights.py --weights 文件夹 --prompt "The capital of France is"
    python ch05/experiments/exp_llama_weights.py --weights 文件夹 --dtype bfloat16 --ids 128000 791 6864
    约 6 秒，0.5 GB（2 核 CPU）

文件夹里要有 config.json 和 model.safetensors（大的分成几份，外加 model.safetensors.index.json）；用文字还要 tokenizer.json 和 pip install tokenizers。
这里没有 KV 缓存，每写一个词元，前面的都重算一遍；有缓存的，见 exp_real_llm.py。

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　g 键和值有几份　k 每个头的维度　V 词表大小
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

# 改这里：没有权重时，照这个样子造一个小 Llama；写法与 Hugging Face 的 config.json 相同。
HUB_CONFIG = {
    "model_type": "llama", "vocab_size": 256, "max_position_embeddings": 128, "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2,
    "num_hidden_layers": 3, "intermediate_size": 160, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "hidden_act": "silu",
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
}  # fmt: skip


# region 沿用 ch05/experiments/exp_rope_layouts.py: compute_rope_params, apply_rope, to_interleaved
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


def to_interleaved(weight, num_heads):
    """W_query 或 W_key 的行，从对半摆法换成相邻摆法：to_half_split 的逆。（详解见 ch05/experiments/exp_rope_layouts.py）"""
    rows = weight.shape[0] // num_heads
    pairs = weight.reshape(num_heads, 2, rows // 2, -1)  # (h, 2, k/2, d)
    return pairs.transpose(1, 2).reshape(weight.shape)  # (h·k, d)


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


# region 沿用 ch05/experiments/exp_gpt_to_llama.py: ROPE_FREQ, RMSNorm, GroupedQueryAttention, TransformerBlock, rope_tables, LlamaModel, assign, hub_names, load_weights_into_llama, gigabytes
ROPE_FREQ = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context_length": 8192}


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


def assign(left, right, tensor_name="unknown"):
    """把文件里的一个张量变成模型的参数：形状不同、有 nan 或无穷大，就说是哪一个。（详解见 ch05/experiments/exp_gpt_to_llama.py）"""
    if left.shape != right.shape:
        raise ValueError(f"{tensor_name} 的形状不同：模型里是 {tuple(left.shape)}，文件里是 {tuple(right.shape)}，config.json 与权重不是一个模型")
    if not torch.stack(right.aminmax()).isfinite().all():
        raise ValueError(f"{tensor_name} 里有 nan 或无穷大：文件坏了，或存它的训练已经发散，换一个检查点")
    return nn.Parameter(right.to(left.dtype, copy=True))


def hub_names(n_layers):
    """我们的名字 → Hugging Face 的名字，不含输出层。都是"输出、输入"的次序，不用转置；Q、K 是对半摆法，不用换行。（详解见 ch05/experiments/exp_gpt_to_llama.py）"""
    layer = {
        "att.W_query.weight": "self_attn.q_proj.weight", "att.out_proj.weight": "self_attn.o_proj.weight",
        "att.W_key.weight": "self_attn.k_proj.weight", "att.W_value.weight": "self_attn.v_proj.weight",
        "ff.fc1.weight": "mlp.gate_proj.weight", "ff.fc2.weight": "mlp.up_proj.weight", "ff.fc3.weight": "mlp.down_proj.weight",
        "norm1.scale": "input_layernorm.weight", "norm2.scale": "post_attention_layernorm.weight",
    }
    names = {"tok_emb.weight": "model.embed_tokens.weight", "final_norm.scale": "model.norm.weight"}
    return names | {f"trf_blocks.{i}.{ours}": f"model.layers.{i}.{theirs}" for i in range(n_layers) for ours, theirs in layer.items()}


def load_weights_into_llama(model, param_config, params):
    """把 Hugging Face 摆法的 Llama 权重装进 LlamaModel，名字由 hub_names 一一对上。（详解见 ch05/experiments/exp_gpt_to_llama.py）"""
    names = hub_names(param_config["n_layers"])
    if "lm_head.weight" in params:
        names["out_head.weight"] = "lm_head.weight"
    extra = [name for name in params if name not in names.values() and not name.endswith("rotary_emb.inv_freq")]
    missing = [name for name in names.values() if name not in params]
    if extra or missing:
        raise ValueError(f"权重里{'没有' if missing else '多出'} {(missing or extra)[0]}：不是 Llama，或 config.json 与权重不是一个模型")
    for ours, theirs in names.items():
        place, _, last = ours.rpartition(".")
        module = model.get_submodule(place)
        setattr(module, last, assign(getattr(module, last), params[theirs], theirs))
    if "lm_head.weight" not in params:
        model.out_head.weight = model.tok_emb.weight
        print("文件里没有 lm_head.weight：输出层与词嵌入共用一份权重")
    if model.cos.is_meta:
        model.cos, model.sin = rope_tables(model.cfg)


def gigabytes(numbers, dtype):
    """这么多个数占几 GB（2 的 30 次方字节，与原书仓库相同）。（详解见 ch05/experiments/exp_gpt_to_llama.py）"""
    return numbers * dtype.itemsize / 2**30


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


# region 沿用 setup/device_check.py: total_memory
def total_memory():
    """这台机器的内存。（详解见 setup/device_check.py）"""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):
        return None


# endregion


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


class HubWeights:
    """一个文件夹里的 safetensors，当成"名字 → 张量"的字典：用到哪个才读哪个，内存里只多一个张量。

    参数:
        folder (Path): 里面是 model.safetensors，或分成几份，由 model.safetensors.index.json 说明

    异常:
        ValueError: 缺文件，文件不完整，或去掉前缀以后有两个张量同名
    """

    def __init__(self, folder):
        index, self.files, removed = folder / "model.safetensors.index.json", {}, set()
        names = ["model.safetensors"]
        if index.is_file():
            names = sorted(set(read_json(index).get("weight_map", {}).values()))
        for name in names:
            try:
                file = safe_open(folder / name, "pt")  # 只读开头的目录；数是映射进来的
            except (OSError, SafetensorError):
                raise ValueError(f"读不了 {folder / name}：没有这个文件，或没有下载完") from None
            # 编译过的（torch.compile）多 _orig_mod.，只编译某几层的多在中间；多卡训练（DDP）的多 module.。都不是模型自己的名字。
            for key in file.keys():
                removed |= set(re.findall(r"\b(?:_orig_mod|module)\.", key))
                plain = re.sub(r"\b(?:_orig_mod|module)\.", "", key)
                if plain in self.files:
                    raise ValueError(f"{folder} 里有两个 {plain}：不知道该用哪一个")
                self.files[plain] = file, key
        if removed:
            print(f"名字里多出来的 {'、'.join(sorted(removed))} 去掉了")

    def __iter__(self):
        """每个张量的名字，in 也靠它。"""
        return iter(self.files)

    def __getitem__(self, name):
        """读一个张量：名字 → Tensor。"""
        return self.files[name][0].get_tensor(self.files[name][1])


def read_json(path):
    """读一个 JSON 文件，读不了就说是哪一个。

    参数:
        path (Path): 文件

    返回:
        dict: 内容

    异常:
        ValueError: 没有这个文件，或内容不是一个字典
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"读不了 {path}：没有这个文件，或不是 JSON")
    return content


def read_config(folder):
    """Hugging Face 的 config.json → 我们的配置；做不到的（别的模型、别的 RoPE、带偏置）就拒绝，不悄悄算错。

    参数:
        folder (Path): 模型的文件夹

    返回:
        dict: 与 LLAMA32_CONFIG_1B 同样的键

    异常:
        ValueError: 读不了、不是 Llama，或有这里没有写的零件
    """
    path = folder / "config.json"
    raw = read_json(path)
    rope = raw.get("rope_parameters") or {"rope_theta": raw.get("rope_theta", 10_000)} | (raw.get("rope_scaling") or {})  # 5.0 以后的写法，和以前的
    kind = rope.get("rope_type", rope.get("type", "default"))
    try:
        cfg = {
            "vocab_size": raw["vocab_size"], "context_length": raw["max_position_embeddings"], "emb_dim": raw["hidden_size"],
            "n_heads": raw["num_attention_heads"], "n_layers": raw["num_hidden_layers"], "hidden_dim": raw["intermediate_size"],
            "n_kv_groups": raw.get("num_key_value_heads", raw["num_attention_heads"]),  # Llama 2 7B 的没有写：每个头一份
            "rope_base": rope["rope_theta"], "norm_eps": raw["rms_norm_eps"], "rope_freq": None,
        }  # fmt: skip
        if kind == "llama3":
            names = {"original_context_length": "original_max_position_embeddings"}
            cfg["rope_freq"] = {name: rope[names.get(name, name)] for name in ROPE_FREQ}
    except KeyError as error:
        raise ValueError(f"{path} 里没有 {error.args[0]}，不是 Llama 的配置") from None
    odd = {
        f"model_type 是 {raw.get('model_type')}": raw.get("model_type") != "llama",
        f"RoPE 是 {kind}": kind not in ("default", "llama3"),
        "带偏置": raw.get("attention_bias") or raw.get("mlp_bias"),
        f"激活函数是 {raw.get('hidden_act')}": raw.get("hidden_act", "silu") != "silu",
        f"每个头的维度是 {raw.get('head_dim')}": raw.get("head_dim") not in (None, cfg["emb_dim"] // cfg["n_heads"]),
    }
    if any(odd.values()):
        raise ValueError(f"{path}：{next(title for title, wrong in odd.items() if wrong)}，这个脚本只会 Llama 2、Llama 3 的写法")
    return cfg


def load_llama(folder, dtype):
    """从 Hugging Face 的文件夹装一个 Llama；先说要多少内存，装不下就不装。

    参数:
        folder (Path): 模型的文件夹
        dtype (torch.dtype): 装成哪种精度

    返回:
        LlamaModel: 可以用的模型

    异常:
        ValueError: 装不下、读不了，或不是 Llama
    """
    cfg, params = read_config(folder), HubWeights(folder)
    with torch.device("meta"):
        model = LlamaModel(cfg).to(dtype).eval()
    # 文件里没有输出层，就是与词嵌入共用一份，只占一份的内存。
    count = sum(p.numel() for p in model.parameters()) - (0 if "lm_head.weight" in params else model.out_head.weight.numel())
    need, memory = gigabytes(count, dtype) + gigabytes(2 * model.cos.numel(), torch.float32) + 0.7, total_memory()  # 0.7 GB 给 PyTorch 和正在装的那一个
    print(f"{folder}　{count:,} 个参数，{len(params.files)} 个张量；装成 {str(dtype)[6:]} 约要 {need:.1f} GB 内存" + (f"，这台机器有 {memory:.1f} GB" if memory else ""))
    if memory and need > memory:
        raise ValueError(f"装不下：约要 {need:.1f} GB 内存，这台机器只有 {memory:.1f} GB；" + ("请换小一点的模型" if dtype == torch.bfloat16 else "请加上 --dtype bfloat16，或换小一点的模型"))
    load_weights_into_llama(model, cfg, params)
    return model


def hub_like(folder, tied=False):
    """照 Hugging Face 的样子造一个小 Llama，数是随机的，分成两份。

    参数:
        folder (Path): 写到哪里
        tied (bool): True 时不写输出层

    返回:
        dict: 名字 → 张量
    """
    cfg = read_config(write_json(folder / "config.json", HUB_CONFIG).parent)
    torch.manual_seed(123)
    model = LlamaModel(cfg)
    tensors = {theirs: 2 * model.get_parameter(ours).detach() for ours, theirs in hub_names(cfg["n_layers"]).items()}
    # 训练过的归一化，缩放各不相同；全是 1 的，装反了也看不出来。
    tensors = {name: 0.5 + torch.rand(tensor.shape) if "norm" in name else tensor for name, tensor in tensors.items()}
    tensors |= {} if tied else {"lm_head.weight": 2 * model.out_head.weight.detach()}
    files = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for file in sorted(set(files.values())):
        save_file({name: tensor for name, tensor in tensors.items() if files[name] == file}, folder / file)
    write_json(folder / "model.safetensors.index.json", {"weight_map": files})
    return tensors


def write_json(path, content):
    """写一个 JSON 文件。

    参数:
        path (Path): 写到哪里
        content (dict): 内容

    返回:
        Path: 原样返回 path
    """
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def mistakes(tensors, cfg):
    """装错的十种法子：每一种的形状都对。

    参数:
        tensors (dict): 名字 → 张量，对的
        cfg (dict): 配置，对的

    返回:
        dict: 法子 → 一对：张量、配置
    """

    def exchanged(a, b):  # 名字里的 a 与 b 对调
        return {name.replace(a, "?").replace(b, a).replace("?", b): tensor for name, tensor in tensors.items()}, cfg

    def changed(**values):
        return tensors, cfg | values

    rows = {"q_proj": cfg["n_heads"], "k_proj": cfg["n_kv_groups"]}
    meta = {name: next((to_interleaved(tensor, n) for word, n in rows.items() if word in name), tensor) for name, tensor in tensors.items()}
    return {
        "gate_proj 与 up_proj 对调": exchanged("gate_proj", "up_proj"),
        "k_proj 与 v_proj 对调": exchanged("k_proj", "v_proj"),
        "q_proj 与 o_proj 对调": exchanged("q_proj", "o_proj"),
        "两个归一化对调": exchanged("input_layernorm", "post_attention_layernorm"),
        "Q、K 是相邻摆法（Meta 的文件）": (meta, cfg),
        "RoPE 的底数写成 1 万": changed(rope_base=10_000),
        "忘了拉长上下文的设置": changed(rope_freq=None),
        "eps 写成 1e-3": changed(norm_eps=1e-3),
        "头数写成一半，键值也一半": changed(n_heads=cfg["n_heads"] // 2, n_kv_groups=cfg["n_kv_groups"] // 2),
        "没有 lm_head，拿词嵌入代替": ({name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}, cfg),
    }


@torch.no_grad()
def try_mistakes(folder, tensors, ids):
    """每一种装错法都装一遍，与对的比。

    参数:
        folder (Path): hub_like 写的文件夹
        tensors (dict): 同一批张量
        ids (Tensor): 词元编号，(b, t)

    返回:
        dict: 法子 → 每个位置上，下一个词元的概率错了多少（总变差，0 到 1），(t,)
    """
    cfg = read_config(folder)
    right = torch.softmax(load_llama(folder, torch.float32)(ids), dim=-1)  # (b, t, V)
    found = {}
    for title, (wrong, settings) in mistakes(tensors, cfg).items():
        model = LlamaModel(settings).eval()
        load_weights_into_llama(model, settings, wrong)
        found[title] = (torch.softmax(model(ids), dim=-1) - right).abs().sum(dim=-1).mean(dim=0) / 2  # (t,)
    return found


def draw(found, path):
    """左：装错以后，概率错多少与位置；右：Llama 3.1、3.2 怎样拉长上下文。

    参数:
        found (dict): try_mistakes 的结果
        path (Path): 图片写到哪里
    """
    figure, (wrong, rope) = plt.subplots(1, 2, figsize=(14, 4.6), layout="constrained")
    for row, (title, curve) in enumerate(found.items()):
        wrong.plot(range(1, len(curve) + 1), curve, color=f"C{row}", label=title)
    wrong.set(xscale="log", xlabel="第几个词元", ylabel="下一个词元的概率错了多少（总变差）", title="一个错也没有报")
    wrong.set_yscale("symlog", linthresh=1e-5)  # 小的也看得见；0 画在最底下
    wrong.set_ylim(0, 2)
    wrong.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    for name, k, factor in [("Llama 3.1 8B", 128, 8.0), ("Llama 3.2 1B", 64, 32.0)]:
        speeds = []
        for freq in (None, ROPE_FREQ | {"factor": factor}):
            cos, sin = (each[1, : k // 2].double() for each in compute_rope_params(k, 500_000, 2, freq))  # (k/2,)　第 1 个位置转的角度
            speeds.append(torch.atan2(sin, cos))
        rope.plot(2 * torch.pi / speeds[0], speeds[0] / speeds[1], marker="o", markersize=3, label=f"{name}，k = {k}，factor = {factor:g}")
    rope.axvspan(8192 / 4, 8192, color="0.9", label="过渡：8192 个位置里转 4 圈到 1 圈")
    rope.set(xscale="log", yscale="log", yticks=[1, 2, 4, 8, 16, 32], yticklabels=[1, 2, 4, 8, 16, 32], xlabel="原来的波长：转一圈要走几个位置", ylabel="转慢到几分之一", title="拉长上下文，每一对转慢多少")
    rope.minorticks_off()
    rope.legend(fontsize=8)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def use_weights(args):
    """装进读者的权重，贪心地接着写。

    参数:
        args (Namespace): 命令行参数

    异常:
        ValueError: 装不了，没有分词器，或编号超出词表
    """
    tokenizer, ids = None, args.ids
    if ids is None:
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise ValueError("要把文字变成编号，先 pip install tokenizers；或者用 --ids 直接给编号") from None
        file = args.weights / "tokenizer.json"
        if not file.is_file():
            raise ValueError(f"没有 {file}：从模型的页面下载它，或者用 --ids 直接给编号")
        tokenizer = Tokenizer.from_file(str(file))
        ids = tokenizer.encode(args.prompt).ids
    V = read_config(args.weights)["vocab_size"]
    if not ids or not all(0 <= each < V for each in ids):
        raise ValueError(f"编号应在 0 到 {V - 1} 之间，至少一个")
    model = load_llama(args.weights, getattr(torch, args.dtype))
    out = generate(model, torch.tensor([ids]), args.tokens, model.cfg["context_length"])[0].tolist()
    print(f"编号　{out}" + (f"\n文字　{tokenizer.decode(out)}" if tokenizer else ""))


def load_shared(folder):
    """不写输出层再装一次，输出层与词嵌入是同一份吗？

    参数:
        folder (Path): 写到这里面的一个新文件夹

    返回:
        bool: 是
    """
    (folder / "tied").mkdir()
    hub_like(folder / "tied", tied=True)
    model = load_llama(folder / "tied", torch.float32)
    return model.out_head.weight is model.tok_emb.weight


def refusal(folder, tensors):
    """这些张量装不进去时，load_weights_into_llama 怎么说；装进去了就是 None。

    参数:
        folder (Path): 配置在哪里
        tensors (dict): 名字 → 张量；None 表示没有这一个

    返回:
        str 或 None: 报错的那一句
    """
    cfg = read_config(folder)
    try:
        load_weights_into_llama(LlamaModel(cfg), cfg, {name: tensor for name, tensor in tensors.items() if tensor is not None})
    except ValueError as error:
        return str(error)
    return None


def demonstrate():
    """造一个小 Llama，装对一遍，装错十遍。"""
    torch.set_num_threads(1)  # 小矩阵，几个线程互相等
    ids = torch.randint(256, (16, 128), generator=torch.Generator().manual_seed(123))  # (b, t)
    print("没有给 --weights：照 Hugging Face 的样子造一个小的，数是随机的")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tensors = hub_like(folder)
        found = try_mistakes(folder, tensors, ids)
        model = load_llama(folder, torch.float32)
        same = all(torch.equal(model.get_parameter(ours), tensors[theirs]) for ours, theirs in hub_names(3).items())
        stretched = model.cfg["rope_freq"] == ROPE_FREQ | {"original_context_length": 64}
        shared = load_shared(folder)
        caught = {title: refusal(folder, tensors | change) for title, change in [("少一个", {"model.norm.weight": None}), ("多一个", {"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}), ("形状不同", {"model.norm.weight": torch.ones(63)}), ("有 nan", {"model.norm.weight": torch.full((64,), torch.nan)})]}
    print("\n装错的十种法子，形状都对，没有一个报错。下一个词元的概率，错了多少（0 是没错，1 是毫不相干）：")
    print("第 1 个词元　第 16 个　第 128 个　装错法")
    for title, curve in found.items():
        print(f"{curve[0]:11.5f}{curve[15]:10.5f}{curve[127]:11.5f}　{title}")
    print("会报错的，只有这几种：")
    for sentence in caught.values():
        print(f"  {sentence}")
    draw(found, OUTPUTS / "llama_weights.png")
    print(f"图片已写到 {OUTPUTS / 'llama_weights.png'}")

    print("\n这个数字对吗？")
    confirm("装进去的每个数，与文件里的相同，分成两份也一样", same, "名字对错了")
    confirm("拉长上下文的设置读进来了", stretched, "config.json 里叫 rope_scaling，5.0 以后叫 rope_parameters")
    confirm("没有 lm_head 时，输出层与词嵌入是同一份", shared, "复制了一份：要让它们是同一个 Parameter")
    confirm("十种装错法，后面的位置上都看得出来", min(curve[64:].max() for curve in found.values()) > 1e-5, "权重太小或全是 1，装错了也一样，什么也证明不了")
    position = [title for title, curve in found.items() if curve[0] < 1e-6]
    confirm(f"只改位置的装错法（{'、'.join(position)}），第 1 个词元分毫不差", len(position) == 3, "第 0 个位置不转，只有一个词元时位置没有用")
    confirm("少一个、多一个、形状不同、有 nan，都说出了是哪一个张量", all(sentence and ("model." in sentence) for sentence in caught.values()), "没有检查")


def main():
    """没有 --weights：造一个小的，装对一遍，装错十遍；有就装真的。"""
    parser = argparse.ArgumentParser(description="实验　把 Hugging Face 的 Llama 装进自己的代码")
    parser.add_argument("--weights", type=Path, help="Llama 的文件夹；不写就造一个小的")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="装成哪种精度（默认：float32）")
    parser.add_argument("--prompt", default="The capital of France is", help="接着写什么")
    parser.add_argument("--ids", type=int, nargs="+", help="直接给词元编号，不用 tokenizer.json")
    parser.add_argument("--tokens", type=int, default=20, help="写几个词元（默认：20）")
    parser.add_argument("--quick", action="store_true", help="与默认的一样：本来就只要几秒")
    args = parser.parse_args()
    if args.tokens < 1:
        parser.error(f"--tokens 至少是 1，不能是 {args.tokens}")
    try:
        use_weights(args) if args.weights else demonstrate()
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
