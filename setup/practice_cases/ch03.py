"""第 3 章的手敲练习：从一个头的自注意力，到带因果掩码的多头注意力

怎么写一项，见 setup/practice.md「加一个组件」。这里不在顶层导入 torch：列清单要立刻。
"""


def inputs(*shape, seed=1):
    """一份固定的输入。"""
    import torch

    torch.manual_seed(seed)
    return torch.randn(*shape)


def gradients(module, x):
    """输出各维乘上不同的数再求和，反向一次：返回对输入和每个参数的梯度。"""
    import torch

    x = x.clone().requires_grad_()
    out = module(x)
    (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    return {"对输入的梯度": x.grad, "对参数的梯度": {name: p.grad for name, p in module.named_parameters()}}


def outline(module):
    """参数、buffer 的名字和形状：与原书相同，存下的权重才能互相读。"""
    return {
        "参数的名字和形状": [f"{name} {tuple(p.shape)}" for name, p in module.named_parameters()],
        "状态字典里的名字": list(module.state_dict()),
    }


def moves(module):
    """把模块搬到 meta 设备（只记形状的假设备，每台电脑都有），看有没有落下的张量。"""
    import torch

    module.to("meta")
    left = [name for part in module.modules() for name, value in vars(part).items() if isinstance(value, torch.Tensor)]
    return {"搬家之后的设备": sorted({str(t.device) for t in [*module.parameters(), *module.buffers()]}), "没有登记的张量": left}


# ── SelfAttention_v1、SelfAttention_v2 ──


def v1_values(ns):
    import torch

    torch.manual_seed(123)
    attention = ns.SelfAttention_v1(4, 3)
    return {"输出": attention(inputs(5, 4)), "一个词元": attention(inputs(1, 4))}


def v1_gradients(ns):
    import torch

    torch.manual_seed(123)
    return gradients(ns.SelfAttention_v1(4, 3), inputs(5, 4))


def v1_outline(ns):
    return outline(ns.SelfAttention_v1(4, 3))


def v1_initial(ns):
    import torch

    torch.manual_seed(123)
    attention = ns.SelfAttention_v1(4, 3)
    return {"W_query": attention.W_query, "W_key": attention.W_key, "W_value": attention.W_value}


def v2_values(ns):
    import torch

    torch.manual_seed(789)
    attention = ns.SelfAttention_v2(4, 3)
    with_bias = ns.SelfAttention_v2(4, 3, qkv_bias=True)
    return {"输出": attention(inputs(5, 4)), "带偏置的输出": with_bias(inputs(5, 4)), "一个词元": attention(inputs(1, 4))}


def v2_gradients(ns):
    import torch

    torch.manual_seed(789)
    return gradients(ns.SelfAttention_v2(4, 3, qkv_bias=True), inputs(5, 4))


def v2_outline(ns):
    return {"不带偏置": outline(ns.SelfAttention_v2(4, 3)), "带偏置": outline(ns.SelfAttention_v2(4, 3, qkv_bias=True))}


def v2_shared_weights(ns):
    """把三个矩阵换成同样的权重，与 torch 自带的缩放点积注意力比。"""
    import torch

    attention = ns.SelfAttention_v2(4, 3)
    with torch.no_grad():
        for seed, layer in enumerate((attention.W_query, attention.W_key, attention.W_value)):
            layer.weight.copy_(inputs(3, 4, seed=seed))
    x = inputs(5, 4)
    q, k, v = (x @ inputs(3, 4, seed=seed).T for seed in range(3))
    truth = torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None])[0]
    return {"输出": attention(x), "与 torch 自带的相同": torch.allclose(attention(x), truth, atol=1e-5)}


# ── CausalAttention ──


def causal(ns, dropout=0.0, bias=False, length=6):
    import torch

    torch.manual_seed(123)
    return ns.CausalAttention(4, 3, length, dropout, bias)


def causal_values(ns):
    x = inputs(2, 6, 4)
    return {"输出": causal(ns)(x), "带偏置的输出": causal(ns, bias=True)(x)}


def causal_short(ns):
    attention, x = causal(ns), inputs(2, 6, 4)
    return {"比 context_length 短": attention(x[:, :4]), "一个词元": attention(x[:, :1]), "一句话": attention(x[:1])}


def causal_no_peeking(ns):
    import torch

    attention, x = causal(ns), inputs(2, 6, 4)
    changed = x.clone()
    changed[:, 3:] = 9.0
    return {"改动后面的词，前面的输出变了吗": not torch.allclose(attention(x)[:, :3], attention(changed)[:, :3])}


def causal_gradients(ns):
    return gradients(causal(ns, bias=True), inputs(2, 6, 4))


def causal_outline(ns):
    return outline(causal(ns))


def causal_moves(ns):
    return moves(causal(ns))


def causal_dropout(ns):
    """dropout = 0.5、全 1 的值：训练模式下，输出等于留下的权重放大后的和；评估模式下正好是 1。"""
    import torch

    attention = causal(ns, dropout=0.5)
    x = torch.ones(1, 6, 4)
    with torch.no_grad():
        attention.W_value.weight.fill_(0.25)
    torch.manual_seed(1)
    training = attention(x)
    return {"训练模式的输出": training, "评估模式的输出": attention.eval()(x)}


# ── MultiHeadAttentionWrapper ──


def wrapper(ns, heads=3, dropout=0.0, bias=False):
    import torch

    torch.manual_seed(123)
    return ns.MultiHeadAttentionWrapper(4, 2, 6, dropout, heads, bias)


def wrapper_values(ns):
    x = inputs(2, 6, 4)
    return {"3 个头": wrapper(ns)(x), "1 个头": wrapper(ns, heads=1)(x), "带偏置": wrapper(ns, bias=True)(x)}


def wrapper_outline(ns):
    return outline(wrapper(ns))


def wrapper_gradients(ns):
    return gradients(wrapper(ns), inputs(2, 6, 4))


def wrapper_short(ns):
    return {"比 context_length 短": wrapper(ns)(inputs(1, 3, 4))}


def wrapper_dropout(ns):
    import torch

    heads = wrapper(ns, dropout=0.5)
    torch.manual_seed(1)
    return {"训练模式的输出": heads(inputs(1, 6, 4)), "各头的丢弃概率": [head.dropout.p for head in heads.heads]}


# ── MultiHeadAttention ──


def multi(ns, d_in=8, d_out=8, length=6, dropout=0.0, heads=2, bias=False):
    import torch

    torch.manual_seed(123)
    return ns.MultiHeadAttention(d_in, d_out, length, dropout, heads, bias)


def multi_values(ns):
    x = inputs(2, 6, 8)
    return {"2 个头": multi(ns)(x), "4 个头": multi(ns, heads=4)(x), "带偏置": multi(ns, bias=True)(x)}


def multi_sizes(ns):
    return {"d_in 与 d_out 不同": multi(ns, d_in=5, d_out=6, heads=3)(inputs(2, 6, 5)), "1 个头": multi(ns, heads=1)(inputs(1, 6, 8))}


def multi_short(ns):
    attention, x = multi(ns), inputs(2, 6, 8)
    return {"比 context_length 短": attention(x[:, :4]), "一个词元": attention(x[:, :1])}


def multi_no_peeking(ns):
    import torch

    attention, x = multi(ns), inputs(2, 6, 8)
    changed = x.clone()
    changed[:, 3:] = 9.0
    return {"改动后面的词，前面的输出变了吗": not torch.allclose(attention(x)[:, :3], attention(changed)[:, :3])}


def multi_gradients(ns):
    return gradients(multi(ns, bias=True), inputs(2, 6, 8))


def multi_outline(ns):
    return {"不带偏置": outline(multi(ns)), "带偏置": outline(multi(ns, bias=True))}


def multi_moves(ns):
    return moves(multi(ns))


def multi_dropout(ns):
    import torch

    attention, x = multi(ns, dropout=0.5), inputs(1, 6, 8)
    torch.manual_seed(1)
    return {"训练模式的输出": attention(x), "评估模式的输出": attention.eval()(x)}


def multi_refuses(ns):
    return {"d_out 不能被 num_heads 整除": multi(ns, d_out=8, heads=3)(inputs(1, 6, 8))}


SCALE = "忘了除以 √k。k 个独立的数的点积，方差随 k 变大；不缩放，softmax 会挤成接近 one-hot，梯度几乎为 0。"
WRONG_DIM_OUT = "除数取成了别的维度。要除以的是键向量的长度 k 的平方根，不是词元的个数。"
COLUMN = "softmax 的 dim 写错了。要沿最后一维，让每个查询对各个词元的权重加起来等于 1；按列归一化，行和就不是 1 了，而且不会报错。"
SCORES_VALUES = "查询和键用反了。转置之后，第 i 行成了别人看 i，而不是 i 看别人。"
AFTER = "在 softmax 之后才遮。填 0 之后每行加起来不到 1，而且分母里已经混进了后面的词；要在 softmax 之前填 -inf。"
SELF_VALUES = "加权求和时用的是键，不是值。键只负责被找到，交出去的内容是值。"

COMPONENTS = [
    dict(
        name="SelfAttention_v1",
        title="自注意力（自己建矩阵）",
        section="3.4.2",
        source="ch03/main/example_02_trainable_attention.py",
        parts=["SelfAttention_v1"],
        task="写一个 nn.Module：SelfAttention_v1(d_in, d_out)，一个头的自注意力，没有掩码。三个权重矩阵 W_query、W_key、W_value 依次用 nn.Parameter(torch.rand(d_in, d_out)) 建。"
        "forward(x) 收 (t, d_in)，算 softmax(QKᵀ / √k) V，k 是键的维度，返回 (t, d_out)。",
        blanks=["nn.Parameter(torch.rand(d_in, d_out))", "queries @ keys.T", "scores / keys.shape[-1] ** 0.5", "dim=-1", "weights @ values"],
        cases=[("数值", v1_values), ("初始值的次序", v1_initial), ("梯度", v1_gradients), ("参数", v1_outline)],
        mutants=[
            ("scores / keys.shape[-1] ** 0.5", "scores", SCALE),
            ("scores / keys.shape[-1] ** 0.5", "scores / keys.shape[0] ** 0.5", WRONG_DIM_OUT),
            ("dim=-1", "dim=0", COLUMN),
            ("queries @ keys.T", "keys @ queries.T", SCORES_VALUES),
            ("weights @ values", "weights @ keys", SELF_VALUES),
            ("nn.Parameter(torch.rand(d_in, d_out))", "torch.rand(d_in, d_out)", "W_query 没有包成 nn.Parameter。普通张量不会登记，parameters() 里没有它，优化器就不会更新它。", 0),
            ("torch.rand(d_in, d_out)", "torch.randn(d_in, d_out)", "W_query 用了 torch.randn。书里是 torch.rand（0 到 1 之间均匀取），换了分布，同一个种子也得不到书上的数。", 0),
        ],
    ),
    dict(
        name="SelfAttention_v2",
        title="自注意力（nn.Linear）",
        section="3.4.2",
        source="ch03/main/example_02_trainable_attention.py",
        parts=["SelfAttention_v2"],
        task="写一个 nn.Module：SelfAttention_v2(d_in, d_out, qkv_bias=False)，与 SelfAttention_v1 相同，只是三个矩阵换成 nn.Linear（依次是 W_query、W_key、W_value，偏置由 qkv_bias 决定）。"
        "forward(x) 收 (t, d_in)，返回 (t, d_out)。",
        blanks=["nn.Linear(d_in, d_out, bias=qkv_bias)", "self.W_value(x)", "queries @ keys.T", "keys.shape[-1] ** 0.5", "weights @ values"],
        cases=[("数值", v2_values), ("与 torch 自带的比", v2_shared_weights), ("梯度", v2_gradients), ("参数", v2_outline)],
        mutants=[
            ("scores / keys.shape[-1] ** 0.5", "scores", SCALE),
            ("keys.shape[-1] ** 0.5", "keys.shape[-1]", "除以了 k，不是 √k。点积的标准差是 √k，除以 k 就缩得太小，权重接近平均。"),
            ("dim=-1", "dim=0", COLUMN),
            ("queries @ keys.T", "keys @ queries.T", SCORES_VALUES),
            ("weights @ values", "weights @ keys", SELF_VALUES),
            ("values = self.W_value(x)", "values = x", "值没有投影，直接用了输入。W_value 没有用上，学不到东西；输出的维度也不是 d_out 了。"),
            ("bias=qkv_bias", "bias=False", "W_query 没有用上 qkv_bias。加载 GPT-2 的权重时三个投影都要偏置，少一个就读不进去。", 0),
        ],
    ),
    dict(
        name="CausalAttention",
        title="因果注意力",
        section="3.5.3",
        source="ch03/main/example_03_causal_attention.py",
        parts=["CausalAttention"],
        task="写一个 nn.Module：CausalAttention(d_in, d_out, context_length, dropout, qkv_bias=False)，在 SelfAttention_v2 上加批、因果掩码和 dropout。"
        "掩码是 bool 的上三角，登记成名叫 mask 的 buffer；softmax 之前用它把后面的词填成 -inf，softmax 之后再 dropout。forward(x) 收 (b, t, d_in)，t ≤ context_length，返回 (b, t, d_out)。",
        blanks=["diagonal=1", "keys.transpose(1, 2)", "self.mask[:t, :t], -torch.inf", "scores / keys.shape[-1] ** 0.5", "self.dropout(weights)", "weights @ values"],
        cases=[("数值", causal_values), ("短的序列", causal_short), ("不偷看后面", causal_no_peeking), ("梯度", causal_gradients), ("参数与 buffer", causal_outline), ("搬到别的设备", causal_moves), ("dropout", causal_dropout)],
        mutants=[
            ("scores / keys.shape[-1] ** 0.5", "scores", SCALE),
            ("diagonal=1", "diagonal=0", "掩码把自己也遮住了。diagonal 应为 1，写成 0 时第一个词连自己都看不到，整行都是 -inf，softmax 得到 nan。"),
            ("diagonal=1", "diagonal=2", "掩码漏了一格。diagonal 写成 2，每个词都能偷看后面一个词。"),
            ("-torch.inf", "0.0", "遮住的分数填成了 0。e⁰ = 1，不是 0，后面的词照样分到权重；要填 -inf。"),
            (
                "        scores.masked_fill_(self.mask[:t, :t], -torch.inf)\n",
                "",
                "没有用因果掩码。每个词都看得到后面的词，训练时等于抄答案。",
            ),
            (
                "        weights = self.dropout(weights)\n",
                "        weights = self.dropout(weights).masked_fill(self.mask[:t, :t], 0.0)\n        weights = weights / weights.sum(dim=-1, keepdim=True).clamp_min(1e-9)\n",
                "dropout 之后又归一化了一遍。丢弃时已经放大过 1/(1-p) 倍，再除以总和，放大就被抵消了。",
            ),
            (
                "torch.softmax(scores / keys.shape[-1] ** 0.5, dim=-1)",
                "torch.softmax(queries @ keys.transpose(1, 2) / keys.shape[-1] ** 0.5, dim=-1).masked_fill(self.mask[:t, :t], 0.0)",
                AFTER,
            ),
            ("self.mask[:t, :t]", "self.mask", "掩码没有按这一批的长度截取。序列比 context_length 短时，两个形状对不上。"),
            ("dim=-1", "dim=1", COLUMN),
            ("        weights = self.dropout(weights)\n", "", "忘了 dropout。训练时不丢弃任何权重，dropout 参数形同虚设。"),
            (
                'self.register_buffer("mask", torch.triu(torch.ones(context_length, context_length, dtype=torch.bool), diagonal=1))',
                "self.mask = torch.triu(torch.ones(context_length, context_length, dtype=torch.bool), diagonal=1)",
                "掩码没有登记成 buffer。普通属性不会跟着 model.to(device) 搬家，到了 GPU 上就报不在同一个设备。",
            ),
        ],
    ),
    dict(
        name="MultiHeadAttentionWrapper",
        title="并排的多个头",
        section="3.6.1",
        source="ch03/main/example_04_multihead_wrapper.py",
        parts=["MultiHeadAttentionWrapper"],
        needs=["CausalAttention"],
        task="写一个 nn.Module：MultiHeadAttentionWrapper(d_in, d_out, context_length, dropout, num_heads, qkv_bias=False)，把 num_heads 个 CausalAttention 放进名叫 heads 的 nn.ModuleList。"
        "forward(x) 收 (b, t, d_in)，让每个头各算一次，在最后一维拼起来，返回 (b, t, num_heads × d_out)。",
        blanks=["nn.ModuleList", "CausalAttention(d_in, d_out, context_length, dropout, qkv_bias)", "head(x) for head in self.heads", "dim=-1"],
        cases=[("数值", wrapper_values), ("参数", wrapper_outline), ("梯度", wrapper_gradients), ("短的序列", wrapper_short), ("dropout", wrapper_dropout)],
        mutants=[
            ("nn.ModuleList([CausalAttention(d_in, d_out, context_length, dropout, qkv_bias) for _ in range(num_heads)])", "[CausalAttention(d_in, d_out, context_length, dropout, qkv_bias) for _ in range(num_heads)]",
             "各个头放进了普通的列表。nn.Module 看不见列表里的模块，优化器收不到它们的参数；要用 nn.ModuleList。"),
            ("torch.cat([head(x) for head in self.heads], dim=-1)", "sum(head(x) for head in self.heads)", "把各头的输出加起来了。相加会把各头的发现混在一起，再也分不开；应该拼接。"),
            ("dim=-1", "dim=1", "拼接的维度错了。要在最后一维左右拼，写成 dim=1 就成了把序列接长。"),
            ("nn.ModuleList([CausalAttention(d_in, d_out, context_length, dropout, qkv_bias) for _ in range(num_heads)])", "nn.ModuleList([CausalAttention(d_in, d_out, context_length, dropout, qkv_bias)] * num_heads)",
             "每个头是同一个对象。列表乘以 num_heads 只是把同一个头重复几遍，几个头共用一份权重，学不出不同的东西。"),
            ("context_length, dropout, qkv_bias)", "context_length, dropout)", "没有把 qkv_bias 传给每个头。要带偏置时，各头还是不带。"),
            ("context_length, dropout, qkv_bias)", "context_length, 0.0, qkv_bias)", "没有把 dropout 传给每个头。训练时一个权重也不丢弃。"),
        ],
    ),
    dict(
        name="MultiHeadAttention",
        title="多头注意力",
        section="3.6.2",
        source="ch03/main",
        parts=["MultiHeadAttention"],
        task="写一个 nn.Module：MultiHeadAttention(d_in, d_out, context_length, dropout, num_heads, qkv_bias=False)。依次建 W_query、W_key、W_value（nn.Linear，偏置由 qkv_bias 决定）、out_proj（d_out → d_out）、"
        "dropout，再登记 bool 的上三角 buffer mask；d_out 不能被 num_heads 整除时抛 ValueError。"
        "forward(x) 收 (b, t, d_in)：投影，拆成 h 个头，打分，因果掩码，缩放，softmax，dropout，加权求和，拼回 d_out，过 out_proj，返回 (b, t, d_out)。",
        blanks=["d_out // num_heads", "view(b, t, self.num_heads, self.head_dim).transpose(1, 2)", "keys.transpose(2, 3)", "self.mask[:t, :t], -torch.inf", "self.head_dim**0.5", "context.contiguous().view(b, t, self.d_out)", "self.out_proj(context)"],
        cases=[("数值", multi_values), ("别的大小", multi_sizes), ("短的序列", multi_short), ("不偷看后面", multi_no_peeking), ("梯度", multi_gradients), ("参数与 buffer", multi_outline), ("搬到别的设备", multi_moves), ("dropout", multi_dropout), ("不能整除时拒绝", multi_refuses)],
        mutants=[
            ("scores / self.head_dim**0.5", "scores", SCALE),
            ("self.head_dim**0.5", "self.d_out**0.5", "除以了 √d_out。每个头只有 k = d_out / h 维，该除以 √k；除多了，权重会变得太平均。"),
            ("dim=-1", "dim=2", COLUMN),
            ("diagonal=1", "diagonal=0", "掩码把自己也遮住了。diagonal 应为 1，写成 0 时第一个词整行都是 -inf，softmax 得到 nan。"),
            ("diagonal=1", "diagonal=2", "掩码漏了一格。diagonal 写成 2，每个词都能偷看后面一个词。"),
            ("        scores.masked_fill_(self.mask[:t, :t], -torch.inf)\n", "", "没有用因果掩码。每个词都看得到后面的词，训练时等于抄答案。"),
            (
                "torch.softmax(scores / self.head_dim**0.5, dim=-1)",
                "torch.softmax(queries @ keys.transpose(2, 3) / self.head_dim**0.5, dim=-1).masked_fill(self.mask[:t, :t], 0.0)",
                AFTER,
            ),
            ("context.contiguous().view(b, t, self.d_out)", "context.view(b, t, self.d_out)", "拼回去之前少了 contiguous()。transpose 只改读法，内存里的次序没动，view 会报错。"),
            ("context = (weights @ values).transpose(1, 2)", "context = weights @ values", "拼回去之前忘了把头换回来。少了 transpose(1, 2)，各个位置、各个头的数就串在一起了，形状却是对的。"),
            (
                "queries = queries.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)",
                "queries = queries.view(b, self.num_heads, t, self.head_dim)",
                "分头时一步 view 成了 (b, h, t, k)。这样切开的不是各头的维度，而是把不同的词混进了同一个头；要先拆最后一维，再 transpose。",
            ),
            ("return self.out_proj(context)", "return context", "忘了 out_proj。拼接只是把各头摆在一起，out_proj 才让它们互相交流。"),
            ("        weights = self.dropout(weights)\n", "", "忘了 dropout。训练时不丢弃任何权重，dropout 参数形同虚设。"),
            ("self.mask[:t, :t]", "self.mask", "掩码没有按这一批的长度截取。序列比 context_length 短时，两个形状对不上。"),
        ],
    ),
]
