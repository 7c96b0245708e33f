"""第 5 章 · 实验　Gemma 3：五层只看最近 512 个词元，一层全看

问题：　上下文写到 32,768 个词元，五层窗口配一层全看，KV 缓存省几倍？
先猜：　6 倍，接近 64 倍（= 32,768 / 512），还是别的数？窗口再减一半，又能省多少？（先想 10 秒，再运行）
看点：　① 中图：短的时候一点不省，长了以后，剩下的几乎全是那几层全看的，省的倍数停在 6 左右；
        ② 右图和表：Gemma 与 Llama 不同的地方，写错一处也不报错。哪几种，序列没有窗口长时看不出来？只拿一句短的试，就漏过去了；
        ③ 两种底数：只看近处的层转得快，全看的层转得慢；④ 270M 里有六成参数是词嵌入。
动手改：1. TINY 里的 "sliding_window": 16 改成 64（与序列一样长）：与窗口有关的两种错再也看不出来，「每一种都看得出来」变成 ✗。
        2. create_masks 里的 tril(-window) 改成 tril(-window - 1)：窗口多看一个，与定义逐格相比的自查变成 ✗。
        3. RMSNorm 里的 (1.0 + self.scale.float()) 改成 self.scale.float()：没训练过的模型，每一层的输出都变成 0，自查变成 ✗。

运行：
    python ch05/experiments/exp_gemma3.py               # 图片写到 ch05/outputs/
    python ch05/experiments/exp_gemma3.py --weights 文件夹 --ask "中国的首都是哪里？"    # 从 hub 下载好的 Gemma 3（270m、1b），要 pip install tokenizers
    约 7 秒，0.5 GB（2 核 CPU）；--weights 没有 KV 缓存，每写一个词元，前面的都重算一遍，有缓存的见 exp_real_llm.py

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　g 键和值有几份　k 每个头的维度　V 词表大小
"""

import argparse
import json
import os
import re
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from safetensors import SafetensorError, safe_open

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
SLIDING, FULL = "sliding_attention", "full_attention"  # config.json 里的叫法


def layer_types(n_layers, pattern=6):
    """每层用哪一种注意力：每 pattern 层，前面的都用窗口，最后一层全看（5 : 1）。"""
    return [FULL if (i + 1) % pattern == 0 else SLIDING for i in range(n_layers)]


# 改这里：两个只有文字的 Gemma 3。词表 262,144，是 GPT-2 的五倍，为的是一百多种语言。
GEMMA3_CONFIG_270M = {
    "vocab_size": 262_144, "context_length": 32_768, "emb_dim": 640, "n_heads": 4, "n_layers": 18, "hidden_dim": 2048, "head_dim": 256,
    "n_kv_groups": 1, "rope_local_base": 10_000.0, "rope_base": 1_000_000.0, "sliding_window": 512, "layer_types": layer_types(18),
    "query_pre_attn_scalar": 256, "norm_eps": 1e-6,
}  # fmt: skip
GEMMA3_CONFIG_1B = GEMMA3_CONFIG_270M | {"emb_dim": 1152, "n_layers": 26, "hidden_dim": 6912, "layer_types": layer_types(26)}
# 看装错了会怎样用的小模型：六层，窗口 16；query_pre_attn_scalar 与 head_dim 故意不同，27B 就是这样（168 与 128）。
TINY = GEMMA3_CONFIG_270M | {"vocab_size": 256, "context_length": 64, "emb_dim": 64, "n_layers": 6, "hidden_dim": 128, "head_dim": 32, "sliding_window": 16, "layer_types": layer_types(6), "query_pre_attn_scalar": 16}
# 公布的参数个数：270M 是原书仓库印的，1B 是 hub 上权重文件里的。词嵌入：官方的介绍写着 270M 里有 170M，1B 里有 302M。
PUBLISHED = {"270M": 268_098_176, "1B": 999_885_952}


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


# region 沿用 ch05/experiments/exp_gpt_to_llama.py: assign, gigabytes
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


# region 改写 ch04/experiments/exp_moe.py: FeedForward
class FeedForward(nn.Module):
    """GeGLU 前馈网络：闸门那一路过 GELU，不过 SiLU。（原版详解见 ch04/experiments/exp_moe.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.fc1 = nn.Linear(cfg["emb_dim"], cfg["hidden_dim"], bias=False)
        self.fc2 = nn.Linear(cfg["emb_dim"], cfg["hidden_dim"], bias=False)
        self.fc3 = nn.Linear(cfg["hidden_dim"], cfg["emb_dim"], bias=False)

    def forward(self, x):
        # 改：SiLU 换成 GELU，用 tanh 近似的那一种，第 4 章的 GELU 就是它；精确的那一种与它只差千分之一，可是每层都差
        return self.fc3(nn.functional.gelu(self.fc1(x), approximate="tanh") * self.fc2(x))


# endregion


class RMSNorm(nn.Module):
    """Gemma 的均方根归一化：乘的是 1 + scale，scale 从 0 开始；文件里存的就是这个离 1 差多少的数。

    参数:
        emb_dim (int): 最后一维有多大
        eps (float): 防止除以 0

    形状:
        输入 (…, d) → 输出 (…, d)

    出处: 原书仓库 ch05/12_gemma3
    """

    def __init__(self, emb_dim, eps=1e-6):
        super().__init__()
        self.eps = eps
        # 为什么不直接存要乘的数：权重衰减把参数往 0 拉。往 0 拉 scale，就是往 1 拉要乘的数，"不缩放"；Llama 的写法拉的是输出本身。
        self.scale = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x):
        """前向传播。

        参数:
            x (Tensor): (…, d)

        返回:
            Tensor: (…, d)，数据类型与 x 相同
        """
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self.eps)  # (…, d)
        # 与 Llama 还差一点：乘完了再变回半精度。scale 离 0 近，float32 的 1 + scale 留得住它的末几位，bfloat16 的留不住。
        return (normed * (1.0 + self.scale.float())).to(x.dtype)  # (…, d)


# region 改写 ch05/experiments/exp_qwen3.py: GroupedQueryAttention
class GroupedQueryAttention(nn.Module):
    """Gemma 3 的注意力：与 Qwen3 一样有 QK-norm，只是除以多少自己定。（原版详解见 ch05/experiments/exp_qwen3.py）"""

    def __init__(self, d_in, num_heads, num_kv_groups, head_dim=None, qk_norm=False, eps=1e-6, query_pre_attn_scalar=None):  # 改：多一个参数
        super().__init__()
        if num_kv_groups < 1 or num_heads % num_kv_groups != 0:
            raise ValueError(f"{num_heads} 个头不能平均分成 {num_kv_groups} 组")
        if head_dim is None and d_in % num_heads != 0:
            raise ValueError(f"d_in={d_in} 不能被 num_heads={num_heads} 整除，要给出 head_dim")
        self.num_heads, self.num_kv_groups = num_heads, num_kv_groups
        self.head_dim = d_in // num_heads if head_dim is None else head_dim
        # 改：分数除以 √query_pre_attn_scalar。270M、1B 的就是 k，等于没改；27B 的 k = 128，它却是 d / h = 168
        self.divisor = (query_pre_attn_scalar or self.head_dim) ** 0.5
        self.d_out = num_heads * self.head_dim
        self.W_query = nn.Linear(d_in, self.d_out, bias=False)
        self.W_key = nn.Linear(d_in, num_kv_groups * self.head_dim, bias=False)
        self.W_value = nn.Linear(d_in, num_kv_groups * self.head_dim, bias=False)
        self.out_proj = nn.Linear(self.d_out, d_in, bias=False)
        # 改：这里的 RMSNorm 是 Gemma 的。Gemma 2 靠 50·tanh(分数 / 50) 压住太大的分数，Gemma 3 换成了 QK-norm
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
        weights = torch.softmax(scores / self.divisor, dim=-1)  # (b, h, t, t)　改：不一定是 √k
        context = (weights @ values).transpose(1, 2).reshape(b, t, self.d_out)  # (b, t, h·k)
        return self.out_proj(context)


# endregion


# region 改写 ch05/experiments/exp_qwen3.py: TransformerBlock
class TransformerBlock(nn.Module):
    """Gemma 3 的 Transformer 块：注意力和前馈网络，前后各归一化一次；一层只用一种注意力。（原版详解见 ch05/experiments/exp_qwen3.py）"""

    def __init__(self, cfg, attn_type):  # 改：多一个参数，"sliding_attention"（只看窗口里的）或 "full_attention"（全看）；掩码和 RoPE 表由模型按它挑
        super().__init__()
        self.attn_type = attn_type  # 改：模型要看它
        # 改：总有 QK-norm；分数除以多少由配置定
        self.att = GroupedQueryAttention(cfg["emb_dim"], cfg["n_heads"], cfg["n_kv_groups"], cfg["head_dim"], True, cfg["norm_eps"], cfg["query_pre_attn_scalar"])
        self.ff = FeedForward(cfg)  # 改：没有专家
        # 改：两个归一化变成四个，名字照文件里的。陷阱：名字与 Llama 的相同，意思不同：
        # Llama 的 post_attention_layernorm 是前馈网络前面那一个，这里是注意力后面那一个。
        self.input_layernorm = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])
        self.post_attention_layernorm = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])
        self.pre_feedforward_layernorm = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])
        self.post_feedforward_layernorm = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])

    def forward(self, x, mask, cos, sin):
        # 改：先归一化，管住进去的；出来的再归一化一次，加到残差上的就总是差不多大，不会有哪一层突然压过别的层
        x = x + self.post_attention_layernorm(self.att(self.input_layernorm(x), mask, cos, sin))  # (b, t, d)
        return x + self.post_feedforward_layernorm(self.ff(self.pre_feedforward_layernorm(x)))  # 改：前馈网络也是前后各一次


# endregion


def create_masks(t, window, device=None):
    """两种掩码：True 的地方不许看。

    参数:
        t (int): 序列长度
        window (int): 窗口 W：看自己和前面 W − 1 个
        device (torch.device 或 None): 放在哪里

    返回:
        tuple[Tensor, Tensor]: 全看的，有窗口的，都是 (t, t)
    """
    everything = torch.ones(t, t, dtype=torch.bool, device=device)  # (t, t)
    mask_global = everything.triu(diagonal=1)  # (t, t)　未来不许看
    return mask_global, mask_global | everything.tril(-window)  # (t, t)，(t, t)　第 i 行看得见 i − W + 1 … i；对角线往下第 W 条起，都太早了


class Gemma3Model(nn.Module):
    """Gemma 3：词嵌入 × √d → 一摞 Transformer 块（五层窗口、一层全看）→ RMSNorm → 输出层（与词嵌入共用）。

    参数:
        cfg (dict): 模型配置，如 GEMMA3_CONFIG_270M

    异常:
        ValueError: layer_types 的个数不是层数

    出处: 原书仓库 ch05/12_gemma3
    """

    def __init__(self, cfg):
        super().__init__()
        if len(cfg["layer_types"]) != cfg["n_layers"]:
            raise ValueError(f"layer_types 有 {len(cfg['layer_types'])} 项，层数却是 {cfg['n_layers']}")
        self.cfg = cfg
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.trf_blocks = nn.ModuleList([TransformerBlock(cfg, attn_type) for attn_type in cfg["layer_types"]])
        self.final_norm = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)
        self.out_head.weight = self.tok_emb.weight  # 共用一份：两份就多出 V·d 个数，270M 会变成 436M
        # 同一份数，两头的要求不同：当输出层，每行的长度约 1 才好，每个数就约 1 / √d；当输入，每个数约 1 才与各层加上去的一样大。
        self.emb_scale = cfg["emb_dim"] ** 0.5
        self.set_rope()

    def set_rope(self):
        """两套 RoPE 表：窗口里只有几百个位置，底数小、转得快，近处分得细；全看的要分得清几万个位置，底数大。"""
        for attn_type, base in ((SLIDING, self.cfg["rope_local_base"]), (FULL, self.cfg["rope_base"])):
            cos, sin = compute_rope_params(self.cfg["head_dim"], base, self.cfg["context_length"])
            self.register_buffer(f"cos_{attn_type}", cos, persistent=False)
            self.register_buffer(f"sin_{attn_type}", sin, persistent=False)

    def forward(self, in_idx):
        """前向传播。

        参数:
            in_idx (Tensor): 词元编号，(b, t)

        返回:
            Tensor: logits（未归一化的分数），(b, t, V)

        异常:
            ValueError: 输入比上下文长度还长
        """
        t = in_idx.shape[1]
        if t > self.cfg["context_length"]:
            raise ValueError(f"输入有 {t} 个词元，超过了模型的上下文长度 {self.cfg['context_length']}")
        masks = dict(zip((FULL, SLIDING), create_masks(t, self.cfg["sliding_window"], in_idx.device)))
        x = self.tok_emb(in_idx)  # (b, t, d)
        # √d 先变成与权重相同的精度再乘：训练时就是这样，bfloat16 的 √640 是 25.25，不是 25.298。
        x = x * torch.tensor(self.emb_scale, dtype=x.dtype)  # (b, t, d)
        for block in self.trf_blocks:
            x = block(x, masks[block.attn_type], getattr(self, f"cos_{block.attn_type}"), getattr(self, f"sin_{block.attn_type}"))  # (b, t, d)
        return self.out_head(self.final_norm(x))  # (b, t, V)


def kv_cache_bytes(cfg, t, itemsize=2):
    """KV 缓存占多少字节：全看的层存 t 个词元，有窗口的层至多存 W 个；每个词元一个键、一个值，各 g·k 个数。

    参数:
        cfg (dict): 模型配置
        t (int): 已经有几个词元
        itemsize (int): 每个数几个字节，bfloat16 是 2

    返回:
        int: 字节数
    """
    kept = sum(t if attn_type == FULL else min(t, cfg["sliding_window"]) for attn_type in cfg["layer_types"])
    return kept * 2 * cfg["n_kv_groups"] * cfg["head_dim"] * itemsize


# region 沿用 ch05/experiments/exp_llama_weights.py: HubWeights, read_json
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


# endregion


# region 沿用 setup/device_check.py: total_memory
def total_memory():
    """这台机器的内存。（详解见 setup/device_check.py）"""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):
        return None


# endregion


# region 沿用 ch05/experiments/exp_qwen3_weights.py: check_memory, assign_all, answer
def check_memory(total, dtype):
    """装之前先算要多少内存，印出来；装不下就现在说，不要装到一半才死。（详解见 ch05/experiments/exp_qwen3_weights.py）"""
    need, memory = gigabytes(total, dtype) + 1.0, total_memory()
    print(f"{total:,} 个参数；装成 {str(dtype)[6:]} 约要 {need:.1f} GB 内存" + (f"，这台机器有 {memory:.1f} GB" if memory else ""))
    if memory and need > memory:
        raise ValueError(f"装不下：约要 {need:.1f} GB 内存，这台机器只有 {memory:.1f} GB；" + ("请换小一点的模型" if dtype == torch.bfloat16 else "请加上 --dtype bfloat16，或换小一点的模型"))


def assign_all(model, names, params):
    """照名字表把张量一个一个装进去；少一个、多一个都拒绝：装得进去不等于是同一个模型。（详解见 ch05/experiments/exp_qwen3_weights.py）"""
    extra, missing = [name for name in params if name not in names.values()], [name for name in names.values() if name not in params]
    if extra or missing:
        raise ValueError(f"权重里{'没有' if missing else '多出'} {(missing or extra)[0]}：config.json 与权重不是一个模型")
    for ours, theirs in names.items():
        place, _, last = ours.rpartition(".")
        module = model.get_submodule(place)
        setattr(module, last, assign(getattr(module, last), params[theirs], theirs))


def answer(load, template, stop, args):
    """装读者的权重，按聊天模板问一句，贪心地回答；分词要 tokenizers。（详解见 ch05/experiments/exp_qwen3_weights.py）"""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ValueError("要把文字变成编号，先 pip install tokenizers") from None
    file = args.weights / "tokenizer.json"
    if not file.is_file():
        raise ValueError(f"没有 {file}：要的是从 hub 下载的整个文件夹")
    tokenizer, model = Tokenizer.from_file(str(file)), load(args.weights, getattr(torch, args.dtype))
    ids = torch.tensor([tokenizer.encode(template.format(args.ask), add_special_tokens=False).ids])  # (1, t)
    out = generate(model, ids, args.tokens, model.cfg["context_length"], eos_id=tokenizer.token_to_id(stop))
    print(f"问　{args.ask}\n答　{tokenizer.decode(out[0, ids.shape[1] :].tolist())}")


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


def gemma_config(folder):
    """把 hub 的 config.json 翻成原书的名字；这份代码没有写的零件，宁可拒绝，也不装成另一个模型。

    参数:
        folder (Path): 从 hub 下载的文件夹

    返回:
        dict: Gemma3Model 的配置

    异常:
        ValueError: 读不了，不是只有文字的 Gemma 3，或有没有写的零件
    """
    raw = read_json(folder / "config.json")
    # 新的写法，两种层的 RoPE 各写一份；旧的写法，rope_theta 是全看的，rope_local_base_freq 是窗口的。
    old = {FULL: {"rope_theta": raw.get("rope_theta")} | (raw.get("rope_scaling") or {}), SLIDING: {"rope_theta": raw.get("rope_local_base_freq")}}
    rope = raw.get("rope_parameters") or old
    odd = {
        f"model_type 是 {raw.get('model_type')}" + ("（带图像的）" if raw.get("model_type") == "gemma3" else ""): raw.get("model_type") != "gemma3_text",
        "带偏置": raw.get("attention_bias"),
        "有 softcapping": raw.get("attn_logit_softcapping") or raw.get("final_logit_softcapping"),
        "注意力是双向的": raw.get("use_bidirectional_attention"),
        "输出层不与词嵌入共用": not raw.get("tie_word_embeddings", True),
        f"激活函数是 {raw.get('hidden_activation')}": raw.get("hidden_activation") != "gelu_pytorch_tanh",
        "RoPE 拉长了上下文": any(each.get("rope_type", "default") != "default" for each in rope.values()),
    }
    if any(odd.values()):
        raise ValueError(f"{folder / 'config.json'}：{next(title for title, wrong in odd.items() if wrong)}，这个脚本只会 Gemma 3 的 270M、1B 的写法")
    names = {"vocab_size": "vocab_size", "context_length": "max_position_embeddings", "emb_dim": "hidden_size", "n_heads": "num_attention_heads", "n_layers": "num_hidden_layers"}
    names |= {"hidden_dim": "intermediate_size", "head_dim": "head_dim", "n_kv_groups": "num_key_value_heads", "norm_eps": "rms_norm_eps"}
    names |= {"sliding_window": "sliding_window", "query_pre_attn_scalar": "query_pre_attn_scalar"}
    try:
        cfg = {ours: raw[theirs] for ours, theirs in names.items()}
        cfg |= {"rope_base": float(rope[FULL]["rope_theta"]), "rope_local_base": float(rope[SLIDING]["rope_theta"])}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'config.json'} 里缺 {error.args[0]}，不是 Gemma 3 的配置") from None
    return cfg | {"layer_types": raw.get("layer_types") or layer_types(cfg["n_layers"], raw.get("sliding_window_pattern", 6))}


def load_weights_into_gemma(model, param_config, params):
    """把 hub 的 Gemma 3 权重装进 Gemma3Model：四个归一化同名，都不用转置；归一化的数照原样装，1 在 forward 里加。

    参数:
        model (Gemma3Model): 模型，可以建在 meta 上
        param_config (dict): 模型配置，用到 n_layers
        params (dict 或 HubWeights): 名字 → 张量，如 "model.layers.0.pre_feedforward_layernorm.weight"

    异常:
        ValueError: 少了、多了一个张量，形状不同，或有不是有限的数

    出处: 原书仓库 ch05/12_gemma3
    """
    layer = {
        "att.W_query.weight": "self_attn.q_proj.weight", "att.W_key.weight": "self_attn.k_proj.weight",
        "att.W_value.weight": "self_attn.v_proj.weight", "att.out_proj.weight": "self_attn.o_proj.weight",
        "att.q_norm.scale": "self_attn.q_norm.weight", "att.k_norm.scale": "self_attn.k_norm.weight",
        "ff.fc1.weight": "mlp.gate_proj.weight", "ff.fc2.weight": "mlp.up_proj.weight", "ff.fc3.weight": "mlp.down_proj.weight",
    }  # fmt: skip
    layer |= {f"{name}.scale": f"{name}.weight" for name in ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")}
    names = {"tok_emb.weight": "model.embed_tokens.weight", "final_norm.scale": "model.norm.weight"}
    names |= {f"trf_blocks.{i}.{ours}": f"model.layers.{i}.{theirs}" for i in range(param_config["n_layers"]) for ours, theirs in layer.items()}
    names |= {"out_head.weight": "lm_head.weight"} if "lm_head.weight" in params else {}  # 一般没有；有，数也是一样的
    assign_all(model, names, params)
    model.out_head.weight = model.tok_emb.weight  # 装完再共用一次：assign 换了新的 Parameter
    print("输出层与词嵌入共用一份权重：" + ("文件里又存了一份 lm_head.weight，没有用它" if "lm_head.weight" in params else "文件里没有 lm_head.weight"))
    model.set_rope()  # 建在 meta 上时，表里也没有数


def load_gemma(folder, dtype):
    """从 hub 的文件夹装一个 Gemma 3；先说要多少内存，装不下就不装。

    参数:
        folder (Path): 有 config.json 和 safetensors（一个，或分成几份）
        dtype (torch.dtype): 装成哪种精度

    返回:
        Gemma3Model: 可以用的模型

    异常:
        ValueError: 装不下、读不了，或不是 Gemma 3
    """
    cfg, params = gemma_config(folder), HubWeights(folder)
    with torch.device("meta"):
        model = Gemma3Model(cfg).to(dtype).eval()
    check_memory(sum(p.numel() for p in model.parameters()), dtype)  # parameters() 里共用的只出现一次
    load_weights_into_gemma(model, cfg, params)
    return model


def random_model(cfg):
    """一个像训练过的小模型：归一化的缩放各不相同，装错了才看得出来。

    参数:
        cfg (dict): 模型配置

    返回:
        Gemma3Model: 模型
    """
    torch.manual_seed(123)
    model = Gemma3Model(cfg).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "scale" in name:
                parameter.uniform_(-0.5, 0.5)
            else:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
    return model


def mistakes(right):
    """Gemma 与 Llama 不同的地方，各写错一处：每一种都不报错。

    参数:
        right (Gemma3Model): 对的模型

    返回:
        dict[str, Gemma3Model]: 错在哪里 → 错的模型
    """
    cfg, state = right.cfg, right.state_dict()

    def wrong(weights=state, **changes):
        model = Gemma3Model(cfg | changes).eval()
        model.load_state_dict(weights)
        return model

    def exchanged(a, b):  # 名字里的 a 与 b 对调
        return {name.replace(a, "?").replace(b, a).replace("?", b): tensor for name, tensor in state.items()}

    unscaled = wrong()
    unscaled.emb_scale = 1.0
    return {
        "归一化乘 scale，不是 1 + scale": wrong({name: tensor - 1 if "scale" in name else tensor for name, tensor in state.items()}),
        "词嵌入忘了乘 √d": unscaled,
        "照 Llama 的意思装 post_attention_layernorm": wrong(exchanged("post_attention_layernorm", "pre_feedforward_layernorm")),
        "除以 √k，不是 √query_pre_attn_scalar": wrong(query_pre_attn_scalar=cfg["head_dim"]),
        "两种层的 RoPE 底数对调": wrong(rope_base=cfg["rope_local_base"], rope_local_base=cfg["rope_base"]),
        "全看的层放在最前面": wrong(layer_types=cfg["layer_types"][::-1]),
        "忘了窗口，每层都全看": wrong(sliding_window=cfg["context_length"]),
        "窗口多看一个": wrong(sliding_window=cfg["sliding_window"] + 1),
    }


@torch.no_grad()
def compare(right, ids):
    """每一种写错法与对的比：每个位置上，下一个词元的概率错了多少。

    参数:
        right (Gemma3Model): 对的模型
        ids (Tensor): 词元编号，(b, t)

    返回:
        dict[str, Tensor]: 错在哪里 → 总变差，0 是没错，1 是毫不相干，(t,)
    """
    truth = torch.softmax(right(ids), dim=-1)  # (b, t, V)
    return {title: (torch.softmax(model(ids), dim=-1) - truth).abs().sum(dim=-1).mean(dim=0) / 2 for title, model in mistakes(right).items()}


def draw(found, lengths, path):
    """左：两种掩码；中：KV 缓存与序列长度；右：写错一处，概率错多少与位置。

    参数:
        found (dict): compare 的结果
        lengths (list[int]): 中图的序列长度
        path (Path): 图片写到哪里
    """
    figure, (masks, cache, wrong) = plt.subplots(1, 3, figsize=(17, 4.6), layout="constrained")
    mask_global, mask_local = create_masks(16, 5)
    masks.imshow(2 - mask_global.int() - mask_local.int(), cmap="Blues")
    masks.set(xlabel="看谁（第几个词元）", ylabel="谁在看", title="窗口 5：深的两种层都看得见，\n浅的只有全看的层看得见")
    for title, cfg in [("每层都全看", GEMMA3_CONFIG_1B | {"layer_types": [FULL] * 26}), ("5 : 1，窗口 512", GEMMA3_CONFIG_1B), ("5 : 1，窗口 256", GEMMA3_CONFIG_1B | {"sliding_window": 256}), ("每层都是窗口 512", GEMMA3_CONFIG_1B | {"layer_types": [SLIDING] * 26})]:
        cache.loglog(lengths, [kv_cache_bytes(cfg, t) / 2**20 for t in lengths], label=title, base=2)
    cache.set(xlabel="已经有几个词元", ylabel="KV 缓存（MiB，bfloat16）", title="Gemma 3 1B：26 层，4 层全看")
    cache.legend()
    for row, (title, curve) in enumerate(found.items()):
        wrong.plot(range(1, len(curve) + 1), curve, color=f"C{row}", label=title)
    wrong.axvline(TINY["sliding_window"], color="black", linestyle=":", linewidth=1)
    wrong.set(xlabel=f"第几个词元（虚线是窗口 {TINY['sliding_window']}）", ylabel="下一个词元的概率错了多少（总变差）", title="写错一处，一个也不报错")
    wrong.set_yscale("symlog", linthresh=1e-4)  # 小的也看得见；0 画在最底下
    wrong.set_ylim(0, 1)
    wrong.legend(fontsize=7.5, loc="upper left", bbox_to_anchor=(1, 1))
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    """先算缓存和参数，再把与 Llama 不同的地方各写错一处；给了 --weights 就只装权重、回答一句。"""
    parser = argparse.ArgumentParser(description="实验　Gemma 3：滑动窗口、两套 RoPE、前后都归一化")
    parser.add_argument("--weights", type=Path, help="从 hub 下载好的 Gemma 3 的文件夹（config.json、safetensors、tokenizer.json）")
    parser.add_argument("--ask", default="中国的首都是哪里？", help="装好以后问它什么")
    parser.add_argument("--tokens", type=int, default=60, help="最多回答几个词元（默认：60）")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="装成哪种精度（默认：float32）")
    parser.add_argument("--length", type=int, default=32768, help="算多长的 KV 缓存（默认：32768）")
    parser.add_argument("--quick", action="store_true", help="与默认的一样：本来就只要几秒")
    args = parser.parse_args()
    for name, low, high in [("tokens", 1, 4096), ("length", 1, 2**30)]:
        if not low <= getattr(args, name) <= high:
            parser.error(f"--{name} 应在 {low} 到 {high} 之间，不能是 {getattr(args, name)}")
    if args.weights:
        try:
            # Gemma 的开头一定要有 <bos>，训练时每一段都有它；少了，回答会差很多。
            return answer(load_gemma, "<bos><start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n", "<end_of_turn>", args)
        except (ValueError, OSError) as error:
            parser.error(str(error))

    torch.set_num_threads(1)  # 小矩阵，几个线程互相等
    sizes, totals = {"270M": GEMMA3_CONFIG_270M, "1B": GEMMA3_CONFIG_1B}, {}
    print(f"【缓存】{args.length:,} 个词元，bfloat16")
    for name, cfg in sizes.items():
        full, used = kv_cache_bytes(cfg | {"layer_types": [FULL] * cfg["n_layers"]}, args.length), kv_cache_bytes(cfg, args.length)
        half, count = kv_cache_bytes(cfg | {"sliding_window": cfg["sliding_window"] // 2}, args.length), cfg["layer_types"].count(FULL)
        print(f"  {name.ljust(5)}{cfg['n_layers']} 层都全看 {full / 2**20:7.1f} MiB，只有 {count} 层全看 {used / 2**20:6.1f} MiB，省 {full / used:.2f} 倍（最多 {cfg['n_layers']} ÷ {count} = {cfg['n_layers'] / count:.2f} 倍）；窗口再减一半，{half / 2**20:.1f} MiB")
    print("【RoPE】k = 256 的一个头有 128 对，在窗口（512）和整个上下文（32,768）里，转满一圈的有几对")
    for title, base in [("窗口的层", 10_000.0), ("全看的层", 1_000_000.0)]:
        speeds = 1 / base ** (torch.arange(0, 256, 2) / 256)  # (k/2,)　每走一个位置转多少弧度
        print(f"  {title}　底数 {base:9,.0f}：512 里 {(speeds * 512 >= 2 * torch.pi).sum()} 对，32,768 里 {(speeds * 32768 >= 2 * torch.pi).sum()} 对；最慢的一对，转一圈要 {2 * torch.pi / speeds[-1]:,.0f} 个词元")
    print("【参数】建在 meta 上数，不占内存")
    for name, cfg in sizes.items():
        with torch.device("meta"):
            model = Gemma3Model(cfg)
        totals[name], table = sum(p.numel() for p in model.parameters()), model.tok_emb.weight.numel()
        print(f"  {name.ljust(5)}{totals[name]:12,} 个，词嵌入 {table:,}，占 {table / totals[name]:.0%}；其余 {totals[name] - table:,}")

    right, ids = random_model(TINY), torch.randint(256, (16, 64), generator=torch.Generator().manual_seed(123))  # (b, t)
    found, window = compare(right, ids), TINY["sliding_window"]
    print(f"\n【写错一处】都不报错。下一个词元的概率错了多少（0 是没错，1 是毫不相干）；窗口是 {window}")
    print(f"第 1 个词元　第 {window} 个　第 {len(ids[0])} 个　写错的地方")
    for title, curve in found.items():
        print(f"{curve[0]:11.4f}{curve[window - 1]:11.4f}{curve[-1]:10.4f}　{title}")
    hidden = [title for title, curve in found.items() if curve[:window].max() < 1e-5 < curve.max()]
    print(f"前 {window} 个词元上看不出来的：{'、'.join(hidden) or '没有'}")
    draw(found, [2**i for i in range(7, 18)], OUTPUTS / "gemma3.png")
    print(f"图片已写到 {OUTPUTS / 'gemma3.png'}")

    print("\n这个数字对吗？")
    row, column = torch.arange(64)[:, None], torch.arange(64)[None]  # (t, 1)，(1, t)
    mask_local = create_masks(64, window)[1]
    confirm(f"窗口的掩码与定义相同：只看 0 ≤ 行 − 列 < {window}", torch.equal(~mask_local, (row >= column) & (row - column < window)), "左下角差了一格")
    kept = [(~mask).sum(dim=1).max().item() for mask in create_masks(64, window)]  # 最忙的一行看得见几个，缓存就得留几个
    need = sum(kept[1 if attn_type == SLIDING else 0] for attn_type in TINY["layer_types"]) * 2 * TINY["n_kv_groups"] * TINY["head_dim"] * 2
    confirm("照掩码数的缓存与公式一个字节不差", need == kv_cache_bytes(TINY, 64), "窗口的层也存了全部，或忘了乘 2")
    confirm("270M 和 1B 的参数个数与公布的一个不差", totals == PUBLISHED, "输出层没有共用，或少了哪个归一化")
    fresh, x = Gemma3Model(TINY), torch.randn(2, 9, 64)  # (2, 9, 64)
    same = nn.functional.rms_norm(x, (64,), eps=1e-6)  # (2, 9, 64)
    confirm("没训练过的归一化就是不带缩放的 RMSNorm：1 + 0", torch.allclose(fresh.final_norm(x), same, atol=1e-5), "乘了 scale，忘了 1 +")
    confirm("每一种写错法，后面的位置上都看得出来", min(curve[-1] for curve in found.values()) > 1e-4, "窗口没有序列短，或小模型太特殊")


if __name__ == "__main__":
    main()
