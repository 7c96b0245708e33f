"""Qwen3 和 Gemma 3 的组件：带 QK-norm 的注意力、1 + scale 的均方根归一化、滑动窗口的掩码

怎么写一项，见 setup/practice.md「加一个组件」。这里不在顶层导入 torch：列清单要立刻。
"""


def inputs(*shape, seed=1):
    """一份固定的输入。"""
    import torch

    torch.manual_seed(seed)
    return torch.randn(*shape)


# ── GroupedQueryAttention：head_dim 自己定，QK-norm ──


def attention(ns, qk_norm=True, head_dim=6, groups=2, **named):
    """用固定的种子建一层，归一化的缩放各不相同：全是 1 的，次序反了也看不出来。"""
    import torch

    torch.manual_seed(123)
    layer = ns.GroupedQueryAttention(8, 4, groups, head_dim, qk_norm, **named)
    for name, parameter in layer.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.3, 2.0)
    return layer


def surroundings(t, k=6):
    """因果掩码，和 RoPE 的两张表。"""
    import torch

    angles = torch.outer(torch.arange(t).float(), 10.0 ** -torch.arange(k // 2))
    angles = torch.cat([angles, angles], dim=1)
    return torch.ones(t, t, dtype=torch.bool).triu(1), angles.cos(), angles.sin()


def attention_values(ns):
    x = inputs(2, 5, 8)
    return {
        "有 QK-norm": attention(ns)(x, *surroundings(5)),
        "没有 QK-norm": attention(ns, False)(x, *surroundings(5)),
        "四个头合用一份": attention(ns, groups=1)(x, *surroundings(5)),
        "没给 head_dim": attention(ns, head_dim=None)(x, *surroundings(5, 2)),
        "表比序列长": attention(ns)(x, surroundings(5)[0], *surroundings(9)[1:]),
    }


def attention_rotated(ns):
    _, cos, sin = surroundings(5)
    queries, keys = attention(ns).queries_and_keys(inputs(2, 5, 8), cos, sin)
    return {"查询": queries, "键": keys}


def attention_bound(ns):
    """权重放大 100 倍：有 QK-norm 的输出不变，没有的变了。"""
    import torch

    result, x = {}, inputs(1, 6, 8)
    for qk_norm in (True, False):
        layer = attention(ns, qk_norm)
        before = layer(x, *surroundings(6))
        with torch.no_grad():
            layer.W_query.weight.mul_(100)
            layer.W_key.weight.mul_(100)
        result[f"QK-norm 是 {qk_norm}，放大 100 倍，输出不变"] = torch.allclose(layer(x, *surroundings(6)), before, atol=1e-3)
    return result


def attention_small(ns):
    """很小的输入：eps 这时才看得出来。"""
    return {"输入是千分之一": attention(ns, eps=1e-2).queries_and_keys(inputs(1, 3, 8) / 1000, *surroundings(3)[1:])[0]}


def attention_outline(ns):
    return {title: [f"{name} {tuple(p.shape)}" for name, p in attention(ns, qk_norm).named_parameters()] for title, qk_norm in [("有 QK-norm", True), ("没有", False)]}


def attention_refuses(ns):
    return {"4 个头分 3 组": ns.GroupedQueryAttention(8, 4, 3, 6)}


def attention_refuses_width(ns):
    return {"d 不能被 h 整除，又没给 head_dim": ns.GroupedQueryAttention(10, 4, 2)}


# ── RMSNorm：乘 1 + scale ──


def gemma_norm(ns, scale=None, **named):
    import torch

    layer = ns.RMSNorm(6, **named)
    if scale is not None:
        with torch.no_grad():
            layer.scale.copy_(scale)
    return layer


def norm_values(ns):
    import torch

    x = inputs(2, 3, 6)
    return {"刚建好": gemma_norm(ns)(x), "scale 各不相同": gemma_norm(ns, torch.linspace(-0.5, 0.7, 6))(x), "一大串": gemma_norm(ns)(100 * inputs(6))}


def norm_small(ns):
    return {"默认的 eps": gemma_norm(ns)(1e-3 * inputs(2, 6)), "eps = 0.1": gemma_norm(ns, eps=0.1)(inputs(2, 6))}


def norm_half(ns):
    """bfloat16：在 float32 里算完，包括乘 1 + scale，最后才变回去。"""
    import torch

    layer = gemma_norm(ns, torch.linspace(-0.01, 0.013, 6)).bfloat16()
    return {"bfloat16": layer((10 * inputs(40, 6)).bfloat16()).float()}


def norm_gradients(ns):
    import torch

    layer, x = gemma_norm(ns, torch.linspace(-0.5, 0.7, 6)), inputs(2, 6).requires_grad_()
    (layer(x) * torch.linspace(-1, 1, 12).view(2, 6)).sum().backward()
    return {"对输入": x.grad, "对 scale": layer.scale.grad}


def norm_outline(ns):
    return {"参数": {name: p for name, p in gemma_norm(ns).named_parameters()}}


# ── create_masks ──


def masks_values(ns):
    return {"8 个，窗口 3": ns.create_masks(8, 3), "窗口 1，只看自己": ns.create_masks(4, 1), "窗口比序列长": ns.create_masks(4, 9), "只有一个词元": ns.create_masks(1, 3)}


def masks_counts(ns):
    mask_global, mask_local = ns.create_masks(20, 5)
    return {"全看的，每行看得见几个": (~mask_global).sum(dim=1), "有窗口的": (~mask_local).sum(dim=1), "数据类型": str(mask_local.dtype)}


COMPONENTS = [
    dict(
        name="QKNormAttention",
        title="带 QK-norm 的注意力",
        section="实验",
        source="ch05/experiments/exp_qwen3.py",
        parts=["GroupedQueryAttention"],
        extra={"RMSNorm": "ch05/experiments/exp_gpt_to_llama.py", "apply_rope": "ch05/experiments/exp_rope_layouts.py"},
        task="写一个 nn.Module：GroupedQueryAttention(d_in, num_heads, num_kv_groups, head_dim=None, qk_norm=False, eps=1e-6)。头数不能被份数整除、没给 head_dim 而 d_in 不能被头数整除时 ValueError；head_dim 没给就是 d_in / num_heads。"
        "依次建 W_query（d_in → h·k）、W_key、W_value（d_in → g·k）、out_proj（h·k → d_in），都不带偏置；qk_norm 为 True 时再建 q_norm、k_norm，都是 RMSNorm(k, eps)，否则是 None。"
        "queries_and_keys(x, cos, sin) 返回分好头、归一化过、再用 apply_rope 转过的查询 (b, h, t, k) 和键 (b, g, t, k)；forward(x, mask, cos, sin) 返回 (b, t, d_in)，mask 里 True 的不许看，分数除以 √k。",
        blanks=["d_in // num_heads if head_dim is None else head_dim", "self.q_norm(queries), self.k_norm(keys)", "apply_rope(queries, cos, sin), apply_rope(keys, cos, sin)", "keys.repeat_interleave(self.num_heads // self.num_kv_groups, dim=1)", "scores / self.head_dim**0.5", "nn.Linear(self.d_out, d_in, bias=False)"],
        cases=[("数值", attention_values), ("查询和键", attention_rotated), ("放大权重", attention_bound), ("eps", attention_small), ("参数", attention_outline), ("拒绝分不匀的", attention_refuses), ("拒绝除不尽的", attention_refuses_width)],
        mutants=[
            ("self.q_norm(queries), self.k_norm(keys)", "self.q_norm(queries), keys", "只归一化了查询。键的长度还会跟着权重涨，分数仍然没有上限。"),
            ("self.q_norm(queries), self.k_norm(keys)", "self.k_norm(queries), self.q_norm(keys)", "两个归一化对调了。形状一样，不报错，装上训练好的 scale 就全错。"),
            ("return apply_rope(queries, cos, sin), apply_rope(keys, cos, sin)", "return queries, keys", "没有旋转。注意力就不知道词元的次序和远近。"),
            ("apply_rope(keys, cos, sin)", "keys", "键没有旋转。点积里剩下的不再是距离，而是查询自己的位置。"),
            ("scores / self.head_dim**0.5", "scores", "忘了除以 √k。QK-norm 之后两个向量的长度都是 √k，点积会到 k，softmax 挤成接近 one-hot。"),
            ("scores / self.head_dim**0.5", "scores / x.shape[-1] ** 0.5", "除以了 √d。该除的是每个头的维度 k；k 不是 d / h，就更不能混。"),
            ("keys.repeat_interleave(self.num_heads // self.num_kv_groups, dim=1)", "keys.repeat(1, self.num_heads // self.num_kv_groups, 1, 1)", "复制的次序错了。要 [1, 1, 2, 2]，repeat 给的是 [1, 2, 1, 2]，头就认错了组。"),
            ("d_in // num_heads if head_dim is None else head_dim", "d_in // num_heads", "没有用 head_dim。Qwen3 的 k 是单独定的，0.6B 的就是 d / h 的两倍。"),
            ("self.q_norm = RMSNorm(self.head_dim, eps) if qk_norm else None", "self.q_norm = RMSNorm(self.head_dim) if qk_norm else None", "eps 没有传给 q_norm。它写在 config.json 里，数小的时候结果就不同。"),
        ],
    ),
    dict(
        name="GemmaRMSNorm",
        title="Gemma 的均方根归一化",
        section="实验",
        source="ch05/experiments/exp_gemma3.py",
        parts=["RMSNorm"],
        task="写一个 nn.Module：RMSNorm(emb_dim, eps=1e-6)，可训练的 scale 初值全 0。forward(x) 在 float32 里把最后一维的每一行除以它的均方根 √(mean(x²) + eps)，再乘 1 + scale（也在 float32 里），最后变回 x 的数据类型。",
        blanks=["nn.Parameter(torch.zeros(emb_dim))", "wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self.eps)", "(normed * (1.0 + self.scale.float())).to(x.dtype)"],
        cases=[("数值", norm_values), ("eps", norm_small), ("半精度", norm_half), ("梯度", norm_gradients), ("参数", norm_outline)],
        mutants=[
            ("(1.0 + self.scale.float())", "self.scale.float()", "忘了 1 +。Gemma 存的是离 1 差多少，直接乘它，没训练过的模型输出全是 0。"),
            ("nn.Parameter(torch.zeros(emb_dim))", "nn.Parameter(torch.ones(emb_dim))", "scale 从 1 开始。乘的是 1 + scale，一开始就放大了一倍。"),
            ("(normed * (1.0 + self.scale.float())).to(x.dtype)", "normed.to(x.dtype) * (1.0 + self.scale)", "太早变回了半精度。bfloat16 的 1 + scale 只有 3 位有效数字，小的 scale 就被抹平了。"),
            ("wide = x.float()", "wide = x", "没有先变成 float32。半精度的平方和误差太大。"),
            ("wide.pow(2).mean(dim=-1, keepdim=True)", "wide.var(dim=-1, keepdim=True, unbiased=False)", "除以了标准差。标准差先减均值，均方根不减。"),
            ("dim=-1", "dim=0", "对错了维。每个词元各归一化各的，要对最后一维求平均。"),
            (" + self.eps", "", "没有加 eps。输入全是 0 时就除以 0 了；小的时候结果也不同。"),
        ],
    ),
    dict(
        name="create_masks",
        title="滑动窗口的掩码",
        section="实验",
        source="ch05/experiments/exp_gemma3.py",
        parts=["create_masks"],
        task="写函数 create_masks(t, window, device=None)，返回两个 (t, t) 的布尔掩码，True 的地方不许看：第一个给全看的层，只遮未来；第二个给有窗口的层，第 i 行只看得见 i − window + 1 到 i。",
        blanks=["everything.triu(diagonal=1)", "mask_global | everything.tril(-window)"],
        cases=[("数值", masks_values), ("每行看得见几个", masks_counts)],
        mutants=[
            ("everything.tril(-window)", "everything.tril(-window - 1)", "窗口多看了一个。含自己一共 window 个，多一个，每一层都多。"),
            ("everything.tril(-window)", "everything.tril(-window + 1)", "窗口少看了一个。window 是 1 的时候，连自己也看不见。"),
            ("mask_global | everything.tril(-window)", "everything.tril(-window)", "有窗口的层忘了遮未来。训练时它能偷看答案，损失低得离谱。"),
            ("everything.triu(diagonal=1)", "everything.triu()", "连自己也遮住了。第 0 行一个也看不见，softmax 得到 nan。"),
            ("return mask_global, mask_global | everything.tril(-window)", "return mask_global | everything.tril(-window), mask_global", "两个掩码的次序反了。全看的层就只看得见窗口，有窗口的反而全看。"),
        ],
    ),
]
