"""第 5 章 · 实验　Llama 有多大：参数、内存，还有越写越大的 KV 缓存

问题：　Llama 2 7B、Llama 3.1 8B、Llama 3.2 1B：写到多少个词元，KV 缓存就比权重还大？
先猜：　Llama 3 8B 比 Llama 2 7B 多出 13 亿参数，多在哪里？一个词元的缓存，它反而小，小几倍？（先想 10 秒，再运行）
看点：　① 表：参数、内存、一个词元的缓存；② 缓存追上权重的地方，有的在它的上下文之外，有的在里面；
        ③ 图：实线是缓存，虚线是权重。同时写 b 句话，缓存是 b 倍，权重还是一份，交点就往左挪 b 倍。
动手改：1. --batch 8：四个交点都往左挪 8 倍，除了 Llama 3 8B，都挪到了各自的上下文里面。
        2. 把 LLAMA3_CONFIG_8B 里的 "n_kv_groups": 8 改成 32（每个头一份）：8B 的缓存变成 4 倍，参数也多出 8 亿，「8,030,261,248」变成 ✗。
        3. 把 LLAMA31_CONFIG_8B 里的 "context_length": 131_072 改成 8192：参数一个也不少，一个词元的缓存也不变：
           上下文长短不写在权重里，少的只是 RoPE 的表；3.2 1B 抄了它的配置，表也短了，内存不再是 11.23 GB，那一条变成 ✗。

运行：
    python ch05/experiments/exp_llama_sizes.py              # 图片写到 ch05/outputs/
    python ch05/experiments/exp_llama_sizes.py --batch 8
    约 5 秒，0.4 GB（2 核 CPU）；模型只建在 meta 上：有形状，没有数，不占内存

零件一样一样地换，见 exp_gpt_to_llama.py。

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　g 键和值有几份　k 每个头的维度　V 词表大小
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"


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


# region 沿用 ch05/experiments/exp_gpt_to_llama.py: LLAMA2_CONFIG_7B, ROPE_FREQ, RMSNorm, GroupedQueryAttention, TransformerBlock, rope_tables, LlamaModel, gigabytes, kv_bytes, parts_of
LLAMA2_CONFIG_7B = {
    "vocab_size": 32_000, "context_length": 4096, "emb_dim": 4096, "n_heads": 32, "n_layers": 32,
    "hidden_dim": 11008,
    "n_kv_groups": 32, "rope_base": 10_000, "rope_freq": None, "norm_eps": 1e-5,
}


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


def gigabytes(numbers, dtype):
    """这么多个数占几 GB（2 的 30 次方字节，与原书仓库相同）。（详解见 ch05/experiments/exp_gpt_to_llama.py）"""
    return numbers * dtype.itemsize / 2**30


def kv_bytes(cfg, step):
    """bfloat16 的 KV 缓存，一个词元多少字节：每层存 g 份键、g 份值，各 k 个数；第 5 步之前每个头一份。（详解见 ch05/experiments/exp_gpt_to_llama.py）"""
    return 2 * cfg["n_layers"] * (cfg["n_kv_groups"] if step >= 5 else cfg["n_heads"]) * cfg["emb_dim"] // cfg["n_heads"] * 2


def parts_of(model):
    """参数分几处。（详解见 ch05/experiments/exp_gpt_to_llama.py）"""
    parts = {"嵌入": ("_emb",), "注意力": (".att.",), "前馈网络": (".ff.",), "归一化": ("norm",), "输出层": ("out_head",)}
    return {title: sum(p.numel() for name, p in model.named_parameters() if any(each in name for each in words)) for title, words in parts.items()}


# endregion


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


# 改这里：与原书仓库 ch05/07_gpt_to_llama 的配置同名同数，每一个只写与前一个不同的地方。
LLAMA3_CONFIG_8B = LLAMA2_CONFIG_7B | {"vocab_size": 128_256, "context_length": 8192, "hidden_dim": 14_336, "n_kv_groups": 8, "rope_base": 500_000}
LLAMA31_CONFIG_8B = LLAMA3_CONFIG_8B | {"context_length": 131_072, "rope_freq": ROPE_FREQ}
LLAMA32_CONFIG_1B = LLAMA31_CONFIG_8B | {"emb_dim": 2048, "n_layers": 16, "hidden_dim": 8192, "rope_freq": ROPE_FREQ | {"factor": 32.0}}
MODELS = {"Llama 2 7B": LLAMA2_CONFIG_7B, "Llama 3 8B": LLAMA3_CONFIG_8B, "Llama 3.1 8B": LLAMA31_CONFIG_8B, "Llama 3.2 1B": LLAMA32_CONFIG_1B}
TIED = ["Llama 3.2 1B"]  # 输出层与词嵌入共用一份权重的：小模型才共用，词表占的份额大


def model_memory_size(model, input_dtype=torch.float32):
    """原书仓库的算法：参数、同样多的梯度、所有的表，一共几 GB；只推理时没有梯度，大约一半。

    参数:
        model (nn.Module): 模型，可以在 meta 上
        input_dtype (torch.dtype): 每个数的精度

    返回:
        float: 几 GB
    """
    params = sum(p.numel() for p in model.parameters())
    gradients = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return gigabytes(params + gradients + sum(b.numel() for b in model.buffers()), input_dtype)


def draw(weights, batch, path):
    """KV 缓存随上下文变长，与权重比。

    参数:
        weights (dict): 模型的名字 → 权重占几 GB
        batch (int): 同时写几句话
        path (Path): 图片写到哪里
    """
    figure, axis = plt.subplots(figsize=(8, 4.8), layout="constrained")
    lengths = torch.logspace(2, 5.6, 40)
    for row, (name, cfg) in enumerate((name, cfg) for name, cfg in MODELS.items() if name != "Llama 3 8B"):  # 它与 3.1 的线重合
        one = batch * gigabytes(kv_bytes(cfg, 5) // 2, torch.bfloat16)
        axis.plot(lengths, lengths * one, color=f"C{row}", label=f"{name} 的缓存，{cfg['n_kv_groups']} 份")
        axis.axhline(weights[name], color=f"C{row}", linestyle=":", label=f"{name} 的权重")
        axis.plot(weights[name] / one, weights[name], "o", color=f"C{row}")
        axis.plot(cfg["context_length"], cfg["context_length"] * one, "|", markersize=16, color=f"C{row}")
    axis.set(xscale="log", yscale="log", xlabel=f"写到几个词元（{batch} 句话同时写；竖短线：上下文长度到这里为止）", ylabel="GB（bfloat16）", title="实线是 KV 缓存，虚线是权重，圆点是缓存追上权重的地方")
    axis.legend(fontsize=8)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    """印参数、内存和缓存的表，画图，与公布的数比。"""
    parser = argparse.ArgumentParser(description="实验　Llama 有多大")
    parser.add_argument("--batch", type=int, default=1, help="同时写几句话，每句各有各的缓存（默认：1）")
    parser.add_argument("--quick", action="store_true", help="与默认的一样：本来就只要几秒")
    args = parser.parse_args()
    if not 1 <= args.batch <= 10_000:
        parser.error(f"--batch 应在 1 到 10000 之间，不能是 {args.batch}")
    models, counts, weights = {}, {}, {}
    print("1 GB 是 1024³ 字节。训练：照原书仓库的算法，参数 + 梯度 + 表，没有算优化器")
    print("           参数　共用输出层时　训练 fp32　训练 bf16　只装权重 bf16　KV 缓存（一个词元）")
    for name, cfg in MODELS.items():
        with torch.device("meta"):
            models[name] = model = LlamaModel(cfg)
        counts[name], shared = sum(p.numel() for p in model.parameters()), model.out_head.weight.numel()
        weights[name] = gigabytes(counts[name] - (shared if name in TIED else 0), torch.bfloat16)
        sizes = f"{model_memory_size(model):8.2f} GB{model_memory_size(model, torch.bfloat16):8.2f} GB{weights[name]:9.2f} GB"
        print(f"{counts[name]:15,}{counts[name] - shared:15,}{sizes}{kv_bytes(cfg, 5) / 1024:12.0f} KB　　　{name}")
    more = {part: count - parts_of(models["Llama 2 7B"])[part] for part, count in parts_of(models["Llama 3 8B"]).items()}
    print("Llama 3 8B 比 Llama 2 7B 多的：" + "，".join(f"{part} {count:+,}" for part, count in more.items()))
    print(f"\n同时写 {args.batch} 句话，每句写到多少个词元，缓存就追上了权重？")
    for name, cfg in MODELS.items():
        meet = weights[name] * 2**30 / (args.batch * kv_bytes(cfg, 5))
        print(f"{meet:12,.0f}　{name}，上下文是 {cfg['context_length']:,}：" + ("写不到那么长" if meet > cfg["context_length"] else "写得到，写满时缓存是权重的 " + f"{cfg['context_length'] / meet:.1f} 倍"))
    draw(weights, args.batch, OUTPUTS / "llama_sizes.png")
    print(f"图片已写到 {OUTPUTS / 'llama_sizes.png'}")

    print("\n这个数字对吗？")
    head = models["Llama 3.2 1B"].out_head.weight.numel()
    confirm("Llama 2 7B 是 6,738,415,616", counts["Llama 2 7B"] == 6_738_415_616, "hidden_dim 不是 11008")
    confirm("Llama 3 8B 是 8,030,261,248，拉长上下文的 3.1 一个也不多", counts["Llama 3 8B"] == counts["Llama 3.1 8B"] == 8_030_261_248, "词表、hidden_dim 或键值的份数写错了")
    confirm("Llama 3.2 1B 是 1,498,482,688，共用输出层是 1,235,814,400", (counts["Llama 3.2 1B"], counts["Llama 3.2 1B"] - head) == (1_498_482_688, 1_235_814_400), "层数或 hidden_dim 写错了")
    stored = {name: 2 * sum(block.att.W_key.out_features + block.att.W_value.out_features for block in model.trf_blocks) for name, model in models.items()}
    confirm("一个词元的缓存，与各层 W_key、W_value 输出的数一个字节不差", stored == {name: kv_bytes(cfg, 5) for name, cfg in MODELS.items()}, "忘了键和值各一份，或每个数 2 个字节")
    sizes = [f"{model_memory_size(models[name], dtype):.2f}" for name in ("Llama 3 8B", "Llama 3.2 1B") for dtype in (torch.float32, torch.bfloat16)]
    confirm(f"内存与原书仓库的 59.84、29.92、11.23、5.61 GB 相同（得到 {'、'.join(sizes)}）", sizes == ["59.84", "29.92", "11.23", "5.61"], "忘了梯度或表，或按 10 的 9 次方算")
    masks = 32 * (4096**2 + 2 * 4096 * 128)  # 那里每层各存一份掩码和表，这里全模型用一份
    book = gigabytes(2 * counts["Llama 2 7B"] + masks, torch.float32)
    confirm(f"原书仓库的 Llama 2 7B 是 52.33 GB：多的是每层各存一份的掩码和表（算得 {book:.2f}）", f"{book:.2f}" == "52.33", "忘了 32 层各一份")


if __name__ == "__main__":
    main()
