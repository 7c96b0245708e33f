"""第 5 章 · 实验　从 GPT-2 到 Llama，一次只改一样

问题：　GPT-2 改成 Llama 要换哪几样零件？每换一样，参数、内存、KV 缓存变成多少？
先猜：　RMSNorm、SwiGLU、去掉偏置、RoPE、GQA：哪一样省得最多？有没有哪一样，一个参数也不省？（先想 10 秒，再运行）
看点：　① 表：每行只比上一行多改一样；哪一样动了参数，哪一样动了缓存？② 图：放大到 7B，参数大多在哪里；
        ③ 每改一样都有一条等式：把改掉的那一样中和掉，新旧模型的输出相同。
动手改：1. 把 LLAMA2_CONFIG_7B 的 "hidden_dim": 11008 改成 16384（就是 4d）：SwiGLU 有三个矩阵，不缩小中间那一层，参数就多出 21 亿，不再是 6,738,415,616。
        2. 把 GroupedQueryAttention 里 ③ 的两处 repeat_interleave(self.num_heads // self.num_kv_groups, dim=1)，都换成
           repeat(1, self.num_heads // self.num_kv_groups, 1, 1)：头认错了组，程序照样跑，⑤ 变成 ✗。
        3. 把 RMSNorm 里的 wide.pow(2).mean 换成 wide.var：多减一次均值，就成了没有平移的 LayerNorm，① 变成 ✗。

运行：
    python ch05/experiments/exp_gpt_to_llama.py             # 图片写到 ch05/outputs/
    约 8 秒，0.5 GB（2 核 CPU）；大模型只建在 meta 上：有形状，没有数，不占内存

Llama 2、3、3.2 各有多大，见 exp_llama_sizes.py；装进真的权重，见 exp_llama_weights.py。

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　g 键和值有几份　k 每个头的维度　V 词表大小
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
ROPE_FREQ = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context_length": 8192}  # Llama 3.1；3.2 的 factor 是 32

# 改这里：与原书仓库 ch05/07_gpt_to_llama 的配置同名同数。dtype 不在里面：建好之后 .to(torch.bfloat16) 就行。
LLAMA2_CONFIG_7B = {
    "vocab_size": 32_000, "context_length": 4096, "emb_dim": 4096, "n_heads": 32, "n_layers": 32,
    "hidden_dim": 11008,  # 8d/3 = 10923，向上取到 256 的倍数
    "n_kv_groups": 32, "rope_base": 10_000, "rope_freq": None, "norm_eps": 1e-5,
}  # fmt: skip
# 换零件的起点：把 GPT-2 放大到 Llama 2 的尺寸，和书里的 GPT_CONFIG_124M；n_kv_groups 是最后一步才用的。
GPT_7B = LLAMA2_CONFIG_7B | {"n_kv_groups": 8, "drop_rate": 0.1, "qkv_bias": False}
GPT_124M = GPT_7B | {"vocab_size": 50257, "context_length": 1024, "emb_dim": 768, "n_heads": 12, "n_layers": 12, "hidden_dim": 2048, "n_kv_groups": 4}
TINY = GPT_124M | {"vocab_size": 97, "context_length": 32, "emb_dim": 48, "n_heads": 6, "n_layers": 2, "hidden_dim": 128, "n_kv_groups": 2}
STEPS = ["GPT-2", "① RMSNorm", "② SwiGLU", "③ 没有偏置、dropout", "④ RoPE", "⑤ GQA"]


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


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


class RMSNorm(nn.Module):
    """均方根归一化：x ÷ √(mean(x²) + eps) × scale，不减均值，没有平移；在 float32 里算。

    参数:
        emb_dim (int): 最后一维有多大
        eps (float): 防止除以 0；写在模型的 config.json 里（rms_norm_eps），用错了，数小的时候结果就不同

    出处: 原书仓库 ch05/07_gpt_to_llama；Zhang、Sennrich，Root Mean Square Layer Normalization，2019
    """

    def __init__(self, emb_dim, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(emb_dim))

    def forward(self, x):
        """前向传播。

        参数:
            x (Tensor): (…, d)，什么精度都行

        返回:
            Tensor: (…, d)，精度不变
        """
        wide = x.float()  # bfloat16 只有 3 位有效数字，几千个平方加起来误差太大，先变宽；本来就是 float32 时什么也不做
        normed = wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self.eps)  # (…, d)
        return self.scale * normed.to(x.dtype)  # (…, d)


class GroupedQueryAttention(nn.Module):
    """Llama 的注意力：没有偏置，没有 dropout；h 个头分成 g 组合用键和值；查询和键转过角度再打分。

    参数:
        d_in (int): 输入维度
        d_out (int): 输出维度，必须能被 num_heads 整除
        num_heads (int): 查询头数 h
        num_kv_groups (int): 键和值的份数 g，必须整除 h；g = h 就是多头注意力

    异常:
        ValueError: d_out 不能被 num_heads 整除，或 num_heads 不能被 num_kv_groups 整除

    出处: 原书仓库 ch05/07_gpt_to_llama
    """

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
        """前向传播。

        参数:
            x (Tensor): (b, t, d_in)
            mask (Tensor): 因果掩码，True 的地方不许看，(t, t)
            cos、sin (Tensor): RoPE 的表，至少 t 行

        返回:
            Tensor: (b, t, d_out)
        """
        b, t, _ = x.shape
        # ① 投影，分头：键和值只有 g 份。
        queries = self.W_query(x).view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        keys = self.W_key(x).view(b, t, self.num_kv_groups, self.head_dim).transpose(1, 2)  # (b, g, t, k)
        values = self.W_value(x).view(b, t, self.num_kv_groups, self.head_dim).transpose(1, 2)  # (b, g, t, k)
        # ② 位置：查询和键各转自己的角度，点积里只剩角度之差，也就是距离。值不转：取出来的是内容，与它在哪里无关。
        queries, keys = apply_rope(queries, cos, sin), apply_rope(keys, cos, sin)  # (b, h, t, k)，(b, g, t, k)
        # ③ 每份键和值给同组的 h/g 个头用：第 0 份给头 0…h/g−1。要 [1, 1, 2, 2]，所以不能用 repeat，那是 [1, 2, 1, 2]。
        keys = keys.repeat_interleave(self.num_heads // self.num_kv_groups, dim=1)  # (b, h, t, k)
        values = values.repeat_interleave(self.num_heads // self.num_kv_groups, dim=1)  # (b, h, t, k)
        # ④ 剩下的与第 3 章相同。
        scores = (queries @ keys.transpose(2, 3)).masked_fill(mask, -torch.inf)  # (b, h, t, t)
        weights = torch.softmax(scores / self.head_dim**0.5, dim=-1)  # (b, h, t, t)
        context = (weights @ values).transpose(1, 2).reshape(b, t, self.d_out)  # (b, t, d_out)
        return self.out_proj(context)


class TransformerBlock(nn.Module):
    """Llama 的 Transformer 块：与 GPT-2 一样先归一化、再加回去，只是零件都换了。

    参数:
        cfg (dict): 模型配置：emb_dim、n_heads、n_kv_groups、hidden_dim、norm_eps

    出处: 原书仓库 ch05/07_gpt_to_llama
    """

    def __init__(self, cfg):
        super().__init__()
        self.att = GroupedQueryAttention(cfg["emb_dim"], cfg["emb_dim"], cfg["n_heads"], cfg["n_kv_groups"])
        self.ff = FeedForward(cfg)
        self.norm1 = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])
        self.norm2 = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])

    def forward(self, x, mask, cos, sin):
        """前向传播。

        参数:
            x (Tensor): (b, t, d)
            mask、cos、sin (Tensor): 交给注意力，见那里

        返回:
            Tensor: (b, t, d)
        """
        x = x + self.att(self.norm1(x), mask, cos, sin)  # (b, t, d)
        return x + self.ff(self.norm2(x))


def rope_tables(cfg):
    """一个模型的 RoPE 表：cos 和 sin，两个 (t, k)。"""
    return compute_rope_params(cfg["emb_dim"] // cfg["n_heads"], cfg["rope_base"], cfg["context_length"], cfg["rope_freq"])


class LlamaModel(nn.Module):
    """Llama：词嵌入 → 一摞 Transformer 块 → RMSNorm → 输出层。没有位置嵌入，位置在注意力里转出来。

    参数:
        cfg (dict): 模型配置，如 LLAMA2_CONFIG_7B

    出处: 原书仓库 ch05/07_gpt_to_llama（那里叫 Llama2Model、Llama3Model）
    """

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.trf_blocks = nn.ModuleList([TransformerBlock(cfg) for _ in range(cfg["n_layers"])])
        self.final_norm = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)
        # 所有的层用同一张表。persistent=False：表算得出来，不必存进权重文件。
        cos, sin = rope_tables(cfg)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

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
        if t > len(self.cos):
            raise ValueError(f"输入有 {t} 个词元，超过了模型的上下文长度 {len(self.cos)}")
        mask = torch.ones(t, t, dtype=torch.bool, device=in_idx.device).triu(diagonal=1)  # (t, t)
        x = self.tok_emb(in_idx)  # (b, t, d)
        for block in self.trf_blocks:
            x = block(x, mask, self.cos, self.sin)  # (b, t, d)
        return self.out_head(self.final_norm(x))  # (b, t, V)


def assign(left, right, tensor_name="unknown"):
    """把文件里的一个张量变成模型的参数：形状不同、有 nan 或无穷大，就说是哪一个。

    参数:
        left (nn.Parameter): 模型里原来的参数，可以还在 meta 上（只有形状，没有数）
        right (Tensor): 文件里的张量
        tensor_name (str): 它在文件里的名字，报错时用

    返回:
        nn.Parameter: 新的参数，数据类型与 left 相同

    异常:
        ValueError: 形状不同，或有不是有限的数

    出处: 原书仓库 ch05/07_gpt_to_llama
    """
    if left.shape != right.shape:
        raise ValueError(f"{tensor_name} 的形状不同：模型里是 {tuple(left.shape)}，文件里是 {tuple(right.shape)}，config.json 与权重不是一个模型")
    if not torch.stack(right.aminmax()).isfinite().all():  # 最小、最大都有限，就全都有限（nan 会传出来）；逐个判断要多占一倍的内存
        raise ValueError(f"{tensor_name} 里有 nan 或无穷大：文件坏了，或存它的训练已经发散，换一个检查点")
    return nn.Parameter(right.to(left.dtype, copy=True))  # 复制：right 多半是映射进来的文件，不能在上面改


def hub_names(n_layers):
    """我们的名字 → Hugging Face 的名字，不含输出层。都是"输出、输入"的次序，不用转置；Q、K 是对半摆法，不用换行。

    参数:
        n_layers (int): 几层

    返回:
        dict: 如 "trf_blocks.0.ff.fc1.weight" → "model.layers.0.mlp.gate_proj.weight"
    """
    layer = {
        "att.W_query.weight": "self_attn.q_proj.weight", "att.out_proj.weight": "self_attn.o_proj.weight",
        "att.W_key.weight": "self_attn.k_proj.weight", "att.W_value.weight": "self_attn.v_proj.weight",
        # gate_proj 是过 SiLU 的那一路；与 up_proj 装反了，形状也对，模型却说胡话。
        "ff.fc1.weight": "mlp.gate_proj.weight", "ff.fc2.weight": "mlp.up_proj.weight", "ff.fc3.weight": "mlp.down_proj.weight",
        "norm1.scale": "input_layernorm.weight", "norm2.scale": "post_attention_layernorm.weight",  # 后者是前馈网络之前的
    }  # fmt: skip
    names = {"tok_emb.weight": "model.embed_tokens.weight", "final_norm.scale": "model.norm.weight"}
    return names | {f"trf_blocks.{i}.{ours}": f"model.layers.{i}.{theirs}" for i in range(n_layers) for ours, theirs in layer.items()}


def load_weights_into_llama(model, param_config, params):
    """把 Hugging Face 摆法的 Llama 权重装进 LlamaModel，名字由 hub_names 一一对上。

    参数:
        model (LlamaModel): 模型，可以建在 meta 上
        param_config (dict): 模型配置，用到 n_layers
        params (dict): 名字 → 张量，如 "model.layers.0.self_attn.q_proj.weight"

    异常:
        ValueError: 少了、多了一个张量，形状不同，或有不是有限的数

    出处: 原书仓库 ch05/07_gpt_to_llama
    """
    names = hub_names(param_config["n_layers"])
    if "lm_head.weight" in params:
        names["out_head.weight"] = "lm_head.weight"
    # 老的文件里有 inv_freq，是 RoPE 的表，算得出来。别的多余的张量（例如偏置）不能装作没看见：少用一个，算的就不是同一个模型。
    extra = [name for name in params if name not in names.values() and not name.endswith("rotary_emb.inv_freq")]
    missing = [name for name in names.values() if name not in params]
    if extra or missing:
        raise ValueError(f"权重里{'没有' if missing else '多出'} {(missing or extra)[0]}：不是 Llama，或 config.json 与权重不是一个模型")
    for ours, theirs in names.items():
        place, _, last = ours.rpartition(".")
        module = model.get_submodule(place)
        setattr(module, last, assign(getattr(module, last), params[theirs], theirs))
    if "lm_head.weight" not in params:
        model.out_head.weight = model.tok_emb.weight  # 权重共享：同一个 Parameter，不是复制，省下 V·d 个数
        print("文件里没有 lm_head.weight：输出层与词嵌入共用一份权重")
    if model.cos.is_meta:  # 建在 meta 上的模型，表里也没有数，在这里补算
        model.cos, model.sin = rope_tables(model.cfg)


class PlainAttention(MultiHeadAttention):
    """第 3 章的注意力，套上 Llama 的接口：自己带着掩码，用不着 mask、cos、sin；出来的再过一次 dropout。"""

    def forward(self, x, mask, cos, sin):
        """前向传播，(b, t, d) → (b, t, d)。"""
        return self.dropout(super().forward(x))


class MixedModel(LlamaModel):
    """换到第 step 步的模型：先建一个 Llama，再把还没有换的零件放回 GPT-2 的；怎样连起来，两家相同，不用再写。

    参数:
        cfg (dict): 模型配置
        step (int): 换到第几步：0 是 GPT-2，5 就是 LlamaModel
    """

    def __init__(self, cfg, step):
        super().__init__(cfg)
        d, h, t, drop = cfg["emb_dim"], cfg["n_heads"], cfg["context_length"], cfg["drop_rate"]
        for block in self.trf_blocks:
            if step < 1:
                block.norm1, block.norm2 = LayerNorm(d), LayerNorm(d)
            if step < 2:
                block.ff = nn.Sequential(nn.Linear(d, 4 * d), GELU(), nn.Linear(4 * d, d), nn.Dropout(drop))
            if step < 5:  # 每个头一份键和值
                block.att = PlainAttention(d, d, t, drop, h, cfg["qkv_bias"]) if step < 3 else GroupedQueryAttention(d, d, h, h)
        self.final_norm = LayerNorm(d) if step < 1 else self.final_norm
        if step < 4:  # GPT-2 的位置在进门时加好：钩子（hook）在词嵌入算完之后，把位置嵌入加上去
            self.pos_emb = nn.Embedding(t, d)
            self.tok_emb.register_forward_hook(lambda layer, inputs, out: out + self.pos_emb.weight[: out.shape[1]])
            self.cos, self.sin = torch.ones(t, 1), torch.zeros(t, 1)  # cos 0 = 1，sin 0 = 0：不转


def gigabytes(numbers, dtype):
    """这么多个数占几 GB（2 的 30 次方字节，与原书仓库相同）。"""
    return numbers * dtype.itemsize / 2**30


def kv_bytes(cfg, step):
    """bfloat16 的 KV 缓存，一个词元多少字节：每层存 g 份键、g 份值，各 k 个数；第 5 步之前每个头一份。"""
    return 2 * cfg["n_layers"] * (cfg["n_kv_groups"] if step >= 5 else cfg["n_heads"]) * cfg["emb_dim"] // cfg["n_heads"] * 2


def parts_of(model):
    """参数分几处。

    参数:
        model (nn.Module): LlamaModel 或 MixedModel

    返回:
        dict: 名字 → 多少个
    """
    parts = {"嵌入": ("_emb",), "注意力": (".att.",), "前馈网络": (".ff.",), "归一化": ("norm",), "输出层": ("out_head",)}
    return {title: sum(p.numel() for name, p in model.named_parameters() if any(each in name for each in words)) for title, words in parts.items()}


def step_table(title, cfg):
    """印一张表：六步，每步的参数、内存、KV 缓存。

    参数:
        title (str): 表的名字
        cfg (dict): 起点

    返回:
        list[dict]: 每步的 parts_of
    """
    print(f"\n{title}\n        参数　　　与上一步　fp32 GB　bf16 GB　KV 缓存（一个词元，bf16）")
    rows = []
    for step, name in enumerate(STEPS):
        with torch.device("meta"):
            rows.append(parts_of(MixedModel(cfg, step)))
        before, count = (sum(row.values()) for row in (rows[max(step - 1, 0)], rows[step]))
        print(f"{count:15,}{count - before:+14,}{gigabytes(count, torch.float32):9.2f}{gigabytes(count, torch.bfloat16):9.2f}{kv_bytes(cfg, step) / 1024:10.0f} KB　　{name}")
    return rows


@torch.no_grad()
def check_steps():
    """每一步一条等式：把改掉的那一样中和掉，新旧两个模型的 logits 应当相同。"""
    torch.manual_seed(123)
    ids, x, d = torch.randint(97, (2, 20)), torch.randn(2, 20, 48) + 1, TINY["emb_dim"]  # (b, t)，(b, t, d)
    models = [MixedModel(TINY, step).eval() for step in range(6)]
    ff, norms = models[2].trf_blocks[0].ff, (LayerNorm(d), RMSNorm(d))
    for norm in norms:
        norm.scale.copy_(torch.linspace(0.5, 2, d))
    same = torch.allclose(norms[0](x), norms[1](x - x.mean(dim=-1, keepdim=True)), atol=1e-5)
    confirm("① 先减去均值，RMSNorm 就与没有平移的 LayerNorm 相同：省的是减均值和平移", same, "除以的不是均方根")

    gate, content = x @ ff.fc1.weight.T, x @ ff.fc2.weight.T  # (b, t, hidden)
    same = torch.allclose(ff(x), gate / (1 + torch.exp(-gate)) * content @ ff.fc3.weight.T, atol=1e-5)
    confirm(f"② SwiGLU 与公式相同；中间取 8d/3 = {8 * d // 3}，三个矩阵正好与 4d 的两个一样多", same and sum(p.numel() for p in ff.parameters()) == 8 * d * d, "门和内容反了，或中间没有缩小")

    for block in models[2].trf_blocks:
        block.att.out_proj.bias.zero_()
    state = {name: value for name, value in models[2].state_dict().items() if name in models[3].state_dict()}
    models[3].load_state_dict(state)
    confirm("③ 把 ② 的偏置清成 0，输出就与 ③ 相同", torch.allclose(models[2](ids), models[3](ids), atol=1e-5), "还漏了一个偏置，或注意力不同")

    models[4].load_state_dict({name: value for name, value in state.items() if name != "pos_emb.weight"})
    moved, cos, sin = models[4](ids), models[4].cos, models[4].sin
    models[4].cos, models[4].sin = cos[7:], sin[7:]
    confirm("④ RoPE：整句往后挪 7 个位置，logits 不变（只看距离）", torch.allclose(models[4](ids), moved, atol=1e-4), "查询和键转的不是同样的角度")
    learned = models[3](ids)
    models[3].pos_emb.weight.copy_(models[3].pos_emb.weight.roll(-7, dims=0))
    confirm("④ 可学习的位置：同样一挪，logits 就变了", not torch.allclose(models[3](ids), learned, atol=1e-2), "位置嵌入没有加上")
    models[3].pos_emb.weight.zero_()
    models[4].cos, models[4].sin = torch.ones_like(cos), torch.zeros_like(sin)
    confirm("④ 位置嵌入清成 0、RoPE 不转，③ 与 ④ 就相同", torch.allclose(models[3](ids), models[4](ids), atol=1e-5), "除了位置，还改了别的")
    models[4].cos, models[4].sin = cos, sin

    state = models[5].state_dict()
    rows = torch.arange(2 * 8).view(2, 8).repeat_interleave(3, dim=0).flatten()  # (d,)　6 个头，2 份键值：每份抄给同组的 3 个头
    models[4].load_state_dict({name: value[rows] if "W_key" in name or "W_value" in name else value for name, value in state.items()})
    confirm("⑤ 把 2 份键和值的权重抄给同组各头，多头注意力就与 GQA 相同", torch.allclose(models[4](ids), models[5](ids), atol=1e-5), "头认错了组：要的是 [1, 1, 1, 2, 2, 2]")


def draw(rows, cfg, path):
    """左：7B 的六步，参数在哪里；右：每个词元的 KV 缓存。

    参数:
        rows (list[dict]): 每步的 parts_of
        cfg (dict): 起点
        path (Path): 图片写到哪里
    """
    figure, (bars, cache) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", sharey=True, width_ratios=[3, 2])
    bottom = [0.0] * len(rows)
    for part in rows[0]:
        heights = [row[part] / 1e9 for row in rows]
        bars.barh(STEPS, heights, left=bottom, label=part if max(heights) > 0.01 else None)  # 归一化只有几十万个，画出来看不见
        bottom = [a + b for a, b in zip(bottom, heights)]
    bars.set(title="放大到 7B 的 GPT-2，一步步换成 Llama", xlabel="参数（十亿）", ylabel="换到哪一步", ylim=(len(rows) - 0.4, -1.6))  # 第一步在上，上面留给图例
    bars.legend(fontsize=8, ncols=2, loc="upper center")
    cache.bar_label(cache.barh(STEPS, [kv_bytes(cfg, step) / 1024 for step in range(len(rows))], color="tab:gray"), fmt="%.0f KB", padding=3)
    cache.set(title="一个词元的 KV 缓存（bf16）", xlabel="KB", xlim=(0, kv_bytes(cfg, 0) / 1024 * 1.25))
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    """印每一步的表，画图，验证每一步。"""
    parser = argparse.ArgumentParser(description="实验　从 GPT-2 到 Llama，一次只改一样")
    parser.add_argument("--quick", action="store_true", help="与默认的一样：本来就只要几秒")
    parser.parse_args()
    torch.set_num_threads(1)  # 小矩阵，几个线程互相等
    print("内存只算权重，1 GB 是 1024³ 字节；训练另要梯度和优化器的状态，至少再多三倍")
    small = step_table("书里的 GPT-2 124M（最后分成 4 份键和值）", GPT_124M)
    large = step_table("同样的零件，放大到 Llama 2 7B 的尺寸（最后分成 8 份）", GPT_7B)
    draw(large, GPT_7B, OUTPUTS / "gpt_to_llama.png")
    print(f"图片已写到 {OUTPUTS / 'gpt_to_llama.png'}")

    print("\n这个数字对吗？")
    check_steps()
    confirm("起点是书里的 163,009,536", sum(small[0].values()) == 163_009_536, "qkv_bias 打开了，或少了位置嵌入")
    seven = sum(large[4].values())
    confirm(f"④ 之后正好是 Llama 2 7B 的 6,738,415,616（得到 {seven:,}）", seven == 6_738_415_616, "hidden_dim 不是 11008，或还有偏置")


if __name__ == "__main__":
    main()
