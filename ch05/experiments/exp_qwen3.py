"""第 5 章 · 实验　Qwen3 比 Llama 多了什么：QK-norm、单独定的 head_dim、专家

问题：　把 W_query 和 W_key 都放大 16 倍，注意力分数的最大值变成几倍？查询和键各归一化一次（QK-norm）之后呢？
先猜：　16 倍，256 倍，还是 1 倍？学习率大 10 倍时，哪一种学得好？（先想 10 秒，再运行）
看点：　① 左图：没有 QK-norm，分数按倍数的平方涨，softmax 挤成 one-hot；有 QK-norm，分数一动不动，不超过 √k；
        ② 中图：真的训练，学习率越大，没有 QK-norm 的分数涨到哪里；　③ 右图：同一个种子配对相减，区间整个在 0 的左边才叫更低；
        ④ 参数：0.6B 和 30B-A3B 都建在 meta 上数，不占内存；30B 里，一个词元真正用到的是多少。
动手改：1. QWEN_CONFIG_06_B 里的 "head_dim": 128 改成 64（= d / h，Llama 的算法）：√k 变成 8，分数的界跟着变小；
           参数少了八千多万，「与公布的一个不差」变成 ✗。
        2. 把 self.q_norm(queries), self.k_norm(keys) 里的 self.k_norm(keys) 换成 keys：只管住了一半，分数从平方变成一次方，
           「放大多少倍，分数都不变」变成 ✗。
        3. QWEN3_CONFIG_30B_A3B 里的 "num_experts_per_tok": 8 改成 16：总数一个也没变，一个词元用到的从 11% 变成 17%，与模型卡相符的那一条变成 ✗。

运行：
    python ch05/experiments/exp_qwen3.py                # 图片写到 ch05/outputs/
    python ch05/experiments/exp_qwen3.py --quick
    约 100 秒，0.8 GB（2 核 CPU）；训练过的存着，再运行十几秒

装进从 hub 下载的 Qwen3，专家多了要多少内存，见 exp_qwen3_weights.py。

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　g 键和值有几份　k 每个头的维度　V 词表大小（训练时词元就是字符）
"""

import argparse
import hashlib
import json
import math
import os
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
# 改这里：0.6B 的头数 h = 16、head_dim k = 128，而 d / h = 64：每个头比"平均分"的宽一倍，W_query 是 1024 → 2048，不是方阵。
QWEN_CONFIG_06_B = {
    "vocab_size": 151_936, "context_length": 40_960, "emb_dim": 1024, "n_heads": 16, "n_layers": 28, "hidden_dim": 3072, "head_dim": 128,
    "qk_norm": True, "n_kv_groups": 8, "rope_base": 1_000_000.0, "norm_eps": 1e-6, "tied": True,
}  # fmt: skip
# 混合专家：每层 128 个专家，每个词元用 8 个。没有共享专家，也没有密集的前馈网络；专家的中间维度只有 768。
QWEN3_CONFIG_30B_A3B = {
    "vocab_size": 151_936, "context_length": 262_144, "emb_dim": 2048, "n_heads": 32, "n_layers": 48, "head_dim": 128,
    "qk_norm": True, "n_kv_groups": 4, "rope_base": 10_000_000.0, "norm_eps": 1e-6, "tied": False,
    "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
}  # fmt: skip
# 训练用的小模型：head_dim 也不是 d / h = 16。词表大小由文本定。
QUICK_CONFIG = {"context_length": 32, "emb_dim": 64, "n_heads": 4, "n_layers": 2, "hidden_dim": 128, "head_dim": 32, "n_kv_groups": 2, "rope_base": 1e6, "norm_eps": 1e-6}
RATES = (3e-3, 3e-2)  # 学习率：合适的，和大 10 倍的
# 公布的参数个数。0.6B：原书仓库印的，共用的输出层只算一次；30B-A3B：权重文件的总字节数 61,064,245,248 ÷ 2，模型卡写作 30.5B。
PUBLISHED = {"0.6B": 596_049_920, "30B-A3B": 30_532_122_624}


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


class GroupedQueryAttention(nn.Module):
    """Qwen3 的注意力：与 Llama 差两处，每个头的维度自己定，查询和键打分之前先各归一化一次（QK-norm）。

    参数:
        d_in (int): 输入维度 d
        num_heads (int): 查询头数 h
        num_kv_groups (int): 键和值的份数 g，必须整除 h
        head_dim (int 或 None): 每个头的维度 k；None 表示 d / h，与 Llama 相同
        qk_norm (bool): 要不要 QK-norm
        eps (float): 归一化里防止除以 0 的数

    异常:
        ValueError: h 不能被 g 整除，或没给 head_dim 而 d 不能被 h 整除

    出处: 原书仓库 ch05/11_qwen3；Dehghani 等，Scaling Vision Transformers to 22 Billion Parameters，2023（QK-norm）
    """

    def __init__(self, d_in, num_heads, num_kv_groups, head_dim=None, qk_norm=False, eps=1e-6):
        super().__init__()
        if num_kv_groups < 1 or num_heads % num_kv_groups != 0:
            raise ValueError(f"{num_heads} 个头不能平均分成 {num_kv_groups} 组")
        if head_dim is None and d_in % num_heads != 0:
            raise ValueError(f"d_in={d_in} 不能被 num_heads={num_heads} 整除，要给出 head_dim")
        self.num_heads, self.num_kv_groups = num_heads, num_kv_groups
        # 与 Llama 的差别 ①：h·k 不必等于 d。头宽一点，分数更分得开；代价是 W_query 和 out_proj 大 h·k / d 倍。
        self.head_dim = d_in // num_heads if head_dim is None else head_dim
        self.d_out = num_heads * self.head_dim
        self.W_query = nn.Linear(d_in, self.d_out, bias=False)
        self.W_key = nn.Linear(d_in, num_kv_groups * self.head_dim, bias=False)
        self.W_value = nn.Linear(d_in, num_kv_groups * self.head_dim, bias=False)
        self.out_proj = nn.Linear(self.d_out, d_in, bias=False)  # 从 h·k 回到 d，残差连接才加得上
        # 差别 ②：scale 只有 k 个数，所有的头共用一份。值不归一化：它是要搬运的内容，不参与打分。
        self.q_norm = RMSNorm(self.head_dim, eps) if qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, eps) if qk_norm else None

    def queries_and_keys(self, x, cos, sin):
        """打分用的查询和键：分好头，归一化过，转过角度。

        参数:
            x (Tensor): (b, t, d)
            cos (Tensor): RoPE 的表，至少 t 行
            sin (Tensor): 同上

        返回:
            tuple[Tensor, Tensor]: 查询 (b, h, t, k)，键 (b, g, t, k)
        """
        b, t, _ = x.shape
        queries = self.W_query(x).view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        keys = self.W_key(x).view(b, t, self.num_kv_groups, self.head_dim).transpose(1, 2)  # (b, g, t, k)
        # 归一化以后，每个查询、每个键的长度都是 √k（scale 全是 1 时），点积再除以 √k，就不会超过 √k：
        # 权重涨多大都一样，分数只剩"方向像不像"。要更尖，只能靠 scale 慢慢学。
        if self.q_norm is not None:
            queries, keys = self.q_norm(queries), self.k_norm(keys)  # (b, h, t, k)，(b, g, t, k)
        # 先归一化，再旋转：scale 的每一维配的是没有转过的那一维，次序反了，与训练时就不是同一个模型。
        return apply_rope(queries, cos, sin), apply_rope(keys, cos, sin)

    def forward(self, x, mask, cos, sin):
        """前向传播。

        参数:
            x (Tensor): (b, t, d)
            mask (Tensor): 因果掩码，True 的地方不许看，(t, t)
            cos (Tensor): RoPE 的表，至少 t 行
            sin (Tensor): 同上

        返回:
            Tensor: (b, t, d)
        """
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
    """Qwen3 的 Transformer 块：骨架与 Llama 相同，注意力换成上面的，前馈网络可以换成混合专家。

    参数:
        cfg (dict): 模型配置；有 num_experts 就是 MoE

    出处: 原书仓库 ch05/11_qwen3
    """

    def __init__(self, cfg):
        super().__init__()
        self.att = GroupedQueryAttention(cfg["emb_dim"], cfg["n_heads"], cfg["n_kv_groups"], cfg["head_dim"], cfg["qk_norm"], cfg["norm_eps"])
        # 每个专家的中间维度是 moe_intermediate_size；接口与普通的前馈网络相同，所以 forward 一个字也不用改
        self.ff = MoEFeedForward({**cfg, "hidden_dim": cfg["moe_intermediate_size"]}) if cfg.get("num_experts", 0) else FeedForward(cfg)
        self.norm1 = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])
        self.norm2 = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])

    def forward(self, x, mask, cos, sin):
        """前向传播。

        参数:
            x (Tensor): (b, t, d)
            mask、cos、sin (Tensor): 交给注意力

        返回:
            Tensor: (b, t, d)
        """
        x = x + self.att(self.norm1(x), mask, cos, sin)  # (b, t, d)
        return x + self.ff(self.norm2(x))


class Qwen3Model(nn.Module):
    """Qwen3：词嵌入 → 一摞 Transformer 块 → RMSNorm → 输出层。密集的和 MoE 的是同一个类，差别全在配置里。

    参数:
        cfg (dict): 模型配置，如 QWEN_CONFIG_06_B

    出处: 原书仓库 ch05/11_qwen3；Qwen 团队，Qwen3 Technical Report，2025
    """

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.trf_blocks = nn.ModuleList([TransformerBlock(cfg) for _ in range(cfg["n_layers"])])
        self.final_norm = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)
        # 角度按 head_dim 算，不是 d / h；persistent=False：算得出来的，不进权重文件。
        cos, sin = compute_rope_params(self.trf_blocks[0].att.head_dim, cfg["rope_base"], cfg["context_length"])
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


def count_parameters(model):
    """数参数：一共多少，其中词嵌入和输出层多少，一个词元用得到的多少（只有 MoE 少于全部）。

    参数:
        model (nn.Module): 模型，可以建在 meta 上：那里的张量只有形状，没有数，300 亿个参数也不占内存

    返回:
        dict[str, int]: total、embedding、active
    """
    table, tied = model.tok_emb.weight.numel(), model.cfg["tied"]
    total = sum(p.numel() for p in model.parameters()) - (table if tied else 0)  # 共用的只算一次
    # 每层只有 num_experts_per_tok 个专家真的算；路由要给每个专家打分，全都用得到。
    idle = 0
    for ff in (block.ff for block in model.trf_blocks if isinstance(block.ff, MoEFeedForward)):
        experts = sum(p.numel() for fc in (ff.fc1, ff.fc2, ff.fc3) for p in fc.parameters())
        idle += experts * (ff.num_experts - ff.num_experts_per_tok) // ff.num_experts
    return {"total": total, "embedding": table if tied else 2 * table, "active": total - idle}


@torch.no_grad()
def grow(multiples, lengths=64):
    """把 0.6B 的一层注意力的 W_query、W_key 一起放大，看分数和权重怎么变；输入是归一化过的随机数。

    参数:
        multiples (list[int]): 放大多少倍
        lengths (int): 几个词元

    返回:
        dict[bool, list[tuple[float, float]]]: 有没有 QK-norm → 每个倍数的最大分数（绝对值）、每行最大的权重的平均
    """
    cfg, result = QWEN_CONFIG_06_B, {}
    cos, sin = compute_rope_params(cfg["head_dim"], cfg["rope_base"], lengths)
    mask = torch.ones(lengths, lengths, dtype=torch.bool).triu(diagonal=1)  # (t, t)
    for qk_norm in (False, True):
        torch.manual_seed(123)
        att = GroupedQueryAttention(cfg["emb_dim"], cfg["n_heads"], cfg["n_kv_groups"], cfg["head_dim"], qk_norm)
        x, start, rows = torch.randn(1, lengths, cfg["emb_dim"]), [att.W_query.weight.clone(), att.W_key.weight.clone()], []
        for times in multiples:
            att.W_query.weight.copy_(start[0] * times)
            att.W_key.weight.copy_(start[1] * times)
            scores = attention_scores(att, x, cos, sin)  # (b, h, t, t)
            sharp = torch.softmax(scores.masked_fill(mask, -torch.inf), dim=-1).amax(dim=-1)[..., lengths // 2 :].mean()
            rows.append((scores.abs().max().item(), sharp.item()))
        result[qk_norm] = rows
    return result


def attention_scores(att, x, cos, sin):
    """除以 √k 以后、还没有加掩码的注意力分数。

    参数:
        att (GroupedQueryAttention): 一层注意力
        x (Tensor): 它的输入，(b, t, d)
        cos (Tensor): RoPE 的表，至少 t 行
        sin (Tensor): 同上

    返回:
        Tensor: 分数，(b, h, t, t)
    """
    queries, keys = att.queries_and_keys(x, cos, sin)
    keys = keys.repeat_interleave(att.num_heads // att.num_kv_groups, dim=1)  # (b, h, t, k)
    return queries @ keys.transpose(2, 3) / att.head_dim**0.5  # (b, h, t, t)


@torch.no_grad()
def largest_score(model, ids):
    """整个模型里，所有的层、头、位置，绝对值最大的一个注意力分数（因果掩码之内的）。

    参数:
        model (Qwen3Model): 模型
        ids (Tensor): 词元编号，(b, t)

    返回:
        float: 最大的分数
    """
    seen = []
    # 钩子（hook）：每层注意力前向之前，先把它的输入拿来量一量，模型的代码不用动。
    hooks = [block.att.register_forward_pre_hook(lambda att, inputs: seen.append(attention_scores(att, inputs[0], *inputs[2:]).tril().abs().max().item())) for block in model.trf_blocks]
    model(ids)
    for hook in hooks:
        hook.remove()
    return max(seen)


# region 沿用 ch04/experiments/exp_seed_noise.py: encode_characters, bigram_loss, validation_loss, side_by_side, paired_interval, verdict, draw_differences
def encode_characters(text):
    """按字符编号，前九成作训练集，后一成作验证集。（详解见 ch04/experiments/exp_seed_noise.py）"""
    chars = sorted(set(text))
    number = {char: i for i, char in enumerate(chars)}
    ids = torch.tensor([number[char] for char in text])
    return ids[: len(ids) * 9 // 10], ids[len(ids) * 9 // 10 :], chars


def bigram_loss(train_ids, val_ids, vocab_size):
    """只看前一个字符、靠数数猜下一个，验证损失是多少：不比它低，就什么上下文也没有学到。（详解见 ch04/experiments/exp_seed_noise.py）"""
    pairs = train_ids[:-1] * vocab_size + train_ids[1:]
    counts = torch.bincount(pairs, minlength=vocab_size**2).view(vocab_size, vocab_size) + 0.1  # (V, V)
    probs = counts / counts.sum(dim=1, keepdim=True)
    return -probs[val_ids[:-1], val_ids[1:]].log().mean().item()


def validation_loss(model, ids, context_length):
    """整个验证集的平均损失：首尾相接地切成若干段，一批算完。（详解见 ch04/experiments/exp_seed_noise.py）"""
    model.eval()
    n = (len(ids) - 1) // context_length * context_length
    inputs, targets = ids[:n].view(-1, context_length), ids[1 : n + 1]  # (b, t)，(b·t,)
    with torch.no_grad():
        return nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets).item()


def side_by_side(job, cases, folder, workers=None):
    """每个 case 运行一次 job(*case)，几个进程并排，做完一个存一个；存过的直接读。（详解见 ch04/experiments/exp_seed_noise.py）"""
    source = Path(job.__globals__["__file__"]).read_bytes()
    paths = {case: folder / f"{hashlib.sha256(source + repr(case).encode()).hexdigest()[:16]}.json" for case in cases}
    todo = [case for case in paths if not paths[case].is_file()]
    folder.mkdir(parents=True, exist_ok=True)

    def save(case, result):
        part = paths[case].with_suffix(".part")
        part.write_text(json.dumps(result), encoding="utf-8")
        os.replace(part, paths[case])
    workers = min(workers or os.cpu_count(), len(todo))
    progress = tqdm(total=len(todo), desc="训练", unit="个", leave=False, disable=None if todo else True)
    if workers <= 1:
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


def draw_differences(axis, differences, quick=False):
    """一行一种变体：每个种子的差是一个点，粗线是 99% 区间，竖线是 0。（详解见 ch04/experiments/exp_seed_noise.py）"""
    for row, values in enumerate(differences.values()):
        axis.scatter(values, [row] * len(values), s=14, color="tab:blue", alpha=0.6, zorder=3)
        if not quick:
            mean, half = paired_interval(values)
            color = "0.5" if abs(mean) <= half else ("tab:green" if mean < 0 else "tab:red")
            axis.plot([mean - half, mean + half], [row, row], linewidth=6, alpha=0.5, color=color, solid_capstyle="butt")
    axis.axvline(0, color="black", linewidth=1)
    axis.set_yticks(range(len(differences)), list(differences))
    axis.set_ylim(len(differences) - 0.5, -0.5)


# endregion


# region 沿用 ch04/experiments/exp_moe.py: told
def told(differences, quick):
    """几个种子的差，写成一句：平均 ± 99% 区间的半宽，再加结论；训练太短就不下结论。（详解见 ch04/experiments/exp_moe.py）"""
    if quick:
        return f"{statistics.mean(differences):+.3f}　训练太短：看流程，不下结论"
    return "{:+.3f} ± {:.3f}　".format(*paired_interval(differences)) + verdict(differences)


# endregion


# region 改写 ch04/experiments/exp_seed_noise.py: train
def train(model, train_ids, val_ids, context_length, steps, seed, rate):  # 改：学习率由参数定，没有用到 extra_loss
    """训练一个小模型，记下验证损失的曲线。（原版详解见 ch04/experiments/exp_seed_noise.py）"""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1)  # 改：学习率
    curve = [(0, validation_loss(model, val_ids, context_length))]
    for step in range(1, steps + 1):
        model.train()
        starts = torch.randint(len(train_ids) - context_length, (16, 1), generator=generator)  # (b, 1)
        window = train_ids[starts + torch.arange(context_length + 1)]  # (b, t + 1)
        loss = nn.functional.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        # 改：没有 extra_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % max(1, steps // 20) == 0 or step == steps:
            curve.append((step, validation_loss(model, val_ids, context_length)))
    return curve


# endregion


def train_once(path, rate, qk_norm, steps, seed):
    """训练一次：学习率、有没有 QK-norm、种子由参数定，其余都相同。

    参数:
        path (str): 文本文件
        rate (float): 学习率
        qk_norm (bool): 有没有 QK-norm
        steps (int): 走几步
        seed (int): 权重和批的次序

    返回:
        tuple[float, float]: 最低的验证损失；训练结束时最大的注意力分数
    """
    train_ids, val_ids, chars = encode_characters(Path(path).read_text(encoding="utf-8"))
    torch.manual_seed(seed)
    model = Qwen3Model({**QUICK_CONFIG, "vocab_size": len(chars), "qk_norm": qk_norm})
    curve = train(model, train_ids, val_ids, QUICK_CONFIG["context_length"], steps, seed, rate)
    windows = val_ids[: len(val_ids) // 32 * 32].view(-1, 32)  # (b, t)
    return min(loss for _, loss in curve), largest_score(model, windows)


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


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def draw(multiples, grown, peaks, differences, quick, path):
    """左：权重放大，分数怎么变；中：训练完，最大的分数与学习率；右：损失的差。

    参数:
        multiples (list[int]): 放大多少倍
        grown (dict): grow 的结果
        peaks (dict): 有没有 QK-norm → 每个学习率上各个种子的最大分数
        differences (dict): 学习率 → 每个种子的损失的差
        quick (bool): 训练太短，右图不画区间
        path (Path): 图片写到哪里
    """
    figure, (scores, training, loss) = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    for qk_norm, rows in grown.items():
        title, color = ("有 QK-norm", "tab:blue") if qk_norm else ("没有 QK-norm", "tab:orange")
        scores.loglog(multiples, [row[0] for row in rows], "o-", color=color, label=title)
        training.plot([f"{rate:g}" for rate in RATES], [statistics.median(each) for each in peaks[qk_norm]], color=color, label=title)
        for rate, each in zip(RATES, peaks[qk_norm]):
            training.scatter([f"{rate:g}"] * len(each), each, s=14, color=color, alpha=0.6)
    bound = QWEN_CONFIG_06_B["head_dim"] ** 0.5
    scores.axhline(bound, color="0.5", linestyle="--", label=f"√k = {bound:.1f}")
    scores.set(xlabel="W_query、W_key 放大多少倍", ylabel="最大的注意力分数（绝对值）", title="0.6B 的一层，没有训练", xticks=multiples, xticklabels=multiples)
    scores.minorticks_off()
    training.set(yscale="log", xlabel="学习率", ylabel="训练完，最大的注意力分数", title="小模型真的训练（一个点一个种子，线是中位数）", xlim=(-0.5, len(RATES) - 0.5))
    draw_differences(loss, {f"学习率 {rate:g}": values for rate, values in differences.items()}, quick)
    loss.set(xlabel="有 QK-norm 减没有：最低的验证损失", title="同一个种子配对相减" + ("（训练太短）" if quick else ""))
    ticks = [each for each in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if training.get_ylim()[0] <= each <= training.get_ylim()[1]]
    training.set_yticks(ticks, ticks)
    training.minorticks_off()
    scores.legend()
    training.legend()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    """先放大权重，再真的训练，最后数参数。"""
    parser = argparse.ArgumentParser(description="实验　Qwen3：QK-norm、head_dim、专家")
    parser.add_argument("--steps", type=int, default=250, help="小模型训练几步（默认：250）")
    parser.add_argument("--seeds", type=int, default=8, help="每种训练几个种子，5 到 10（默认：8）")
    parser.add_argument("--seed", type=int, default=123, help="第一个种子；各个种子是它乘 1000 再加 0、1、2……（默认：123）")
    parser.add_argument("--quick", action="store_true", help="两个种子，各训练 4 步：看流程，不下结论")
    args = parser.parse_args()
    for name, low, high in [("steps", 1, 100000), ("seeds", 5, 10), ("seed", 0, 2**50)]:
        if not low <= getattr(args, name) <= high:
            parser.error(f"--{name} 应在 {low} 到 {high} 之间，不能是 {getattr(args, name)}")
    multiples = [1, 2, 4, 8, 16, 32]
    grown = grow(multiples)
    print("【QK-norm】0.6B 的一层注意力，W_query 和 W_key 一起放大")
    print("放大几倍　　最大的分数：没有　　有　　　每行最大的权重：没有　　有")
    for times, without, with_norm in zip(multiples, grown[False], grown[True]):
        print(f"{times:6}{without[0]:20,.1f}{with_norm[0]:9.1f}{without[1]:20.3f}{with_norm[1]:10.3f}")

    steps, seeds = 4 if args.quick else args.steps, [args.seed * 1000 + i for i in range(2 if args.quick else args.seeds)]
    path = find_data("the-verdict.txt", "story-en.txt")
    train_ids, val_ids, chars = encode_characters(path.read_text(encoding="utf-8"))
    bigram = bigram_loss(train_ids, val_ids, len(chars))
    print(f"\n【训练】数据　{path}　模型 2 层，d = 64，4 个头，{len(seeds)} 个种子，各 {steps} 步；只看前一个字符、数数，损失 {bigram:.3f}")
    done = side_by_side(train_once, [(str(path), rate, qk_norm, steps, seed) for seed in seeds for rate in RATES for qk_norm in (False, True)], OUTPUTS / "exp_qwen3", 1 if args.quick else None)
    peaks = {qk_norm: [[done[(str(path), rate, qk_norm, steps, seed)][1] for seed in seeds] for rate in RATES] for qk_norm in (False, True)}
    losses = {qk_norm: [[done[(str(path), rate, qk_norm, steps, seed)][0] for seed in seeds] for rate in RATES] for qk_norm in (False, True)}
    differences = {rate: [b - a for a, b in zip(losses[False][row], losses[True][row])] for row, rate in enumerate(RATES)}
    print("学习率　最大的分数（中位数）：没有　　有　　最低的验证损失：没有　　有　　　相减（± 是 99% 区间的半宽）")
    for row, rate in enumerate(RATES):
        low = {qk_norm: statistics.mean(losses[qk_norm][row]) for qk_norm in (False, True)}
        short = args.quick or max(low.values()) > bigram  # 还不如数数：没练够
        print(f"{rate:<6g}{statistics.median(peaks[False][row]):18.1f}{statistics.median(peaks[True][row]):8.1f}{low[False]:22.3f}{low[True]:8.3f}　　{told(differences[rate], short)}")

    print("\n【参数】建在 meta 上数，不占内存")
    counts = {}
    for name, cfg in [("0.6B", QWEN_CONFIG_06_B), ("30B-A3B", QWEN3_CONFIG_30B_A3B)]:
        with torch.device("meta"):
            counts[name] = count_parameters(Qwen3Model(cfg))
        total, embedding, active = (counts[name][key] for key in ("total", "embedding", "active"))
        print(f"  {name.ljust(8)}{total:15,} 个（词嵌入和输出层 {embedding:,}），bfloat16 要 {2 * total / 2**30:.1f} GB；一个词元用到 {active:,}，占 {active / total:.0%}")
    draw(multiples, grown, peaks, differences, args.quick, OUTPUTS / "qwen3.png")
    print(f"图片已写到 {OUTPUTS / 'qwen3.png'}")

    print("\n这个数字对吗？")
    bound, (first, *_, last) = QWEN_CONFIG_06_B["head_dim"] ** 0.5, grown[True]
    confirm(f"没有 QK-norm：放大 {multiples[-1]} 倍，分数是 {multiples[-1]}² 倍", abs(grown[False][-1][0] / grown[False][0][0] / multiples[-1] ** 2 - 1) < 1e-3, "只放大了一个")
    confirm("有 QK-norm：放大多少倍，分数都不变", abs(last[0] / first[0] - 1) < 1e-3, "只归一化了一个，或归一化用错了维")
    confirm(f"有 QK-norm：分数不超过 √k = {bound:.2f}", max(row[0] for row in grown[True]) <= bound * (1 + 1e-5), "忘了除以 √k")
    confirm("0.6B 和 30B-A3B 的参数个数与公布的一个不差", {name: each["total"] for name, each in counts.items()} == PUBLISHED, "head_dim、份数或共用的输出层算错了")
    large = counts["30B-A3B"]
    confirm("30B-A3B 除了词嵌入和输出层是 29.9B，一个词元用到 3.3B 多一点，与模型卡相符", f"{(large['total'] - large['embedding']) / 1e9:.1f}" == "29.9" and 3.3e9 < large["active"] < 3.4e9, "没用到的专家没有减去")


if __name__ == "__main__":
    main()
