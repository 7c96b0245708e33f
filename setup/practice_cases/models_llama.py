"""Llama 的组件：带 RoPE 的 GQA、能用半精度的 RMSNorm、SwiGLU 前馈网络、整个模型、装进 Hugging Face 的权重

排在实验的组件之后。怎么写一项，见 setup/practice.md「加一个组件」。这里不在顶层导入 torch：列清单要立刻。
"""

SOURCE = "ch05/experiments/exp_gpt_to_llama.py"
CONFIG = {"vocab_size": 11, "context_length": 8, "emb_dim": 16, "n_heads": 4, "n_layers": 2, "hidden_dim": 12, "n_kv_groups": 2, "rope_base": 100.0, "rope_freq": None, "norm_eps": 1e-5}


def inputs(*shape, seed=1):
    """一份固定的输入。"""
    import torch

    torch.manual_seed(seed)
    return torch.randn(*shape)


def build(kind, *arguments, seed=123, **named):
    """用固定的种子建一个模块：各层创建的次序不同，初始值就不同。"""
    import torch

    torch.manual_seed(seed)
    return kind(*arguments, **named)


def gradients(module, x, *others):
    """输出各维乘上不同的数再求和，反向一次：返回对输入和每个参数的梯度。"""
    import torch

    x = x.clone().requires_grad_()
    out = module(x, *others)
    (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    return {"对输入的梯度": x.grad, "对参数的梯度": {name: p.grad for name, p in module.named_parameters()}}


def outline(module):
    """参数的名字和形状，状态字典里的名字。"""
    return {"参数的名字和形状": [f"{name} {tuple(p.shape)}" for name, p in module.named_parameters()], "状态字典里的名字": list(module.state_dict())}


def tables(t, k, base=100.0):
    """RoPE 的表和因果掩码，不靠被查的代码。"""
    import torch

    angles = torch.outer(torch.arange(float(t)), base ** (-torch.arange(0, k, 2) / k))
    return torch.ones(t, t, dtype=torch.bool).triu(1), torch.cat([angles, angles], dim=1).cos(), torch.cat([angles, angles], dim=1).sin()


# ── LlamaAttention ──


def attention(ns, groups=2):
    return build(ns.GroupedQueryAttention, 6, 16, 4, groups)


def attention_values(ns):
    x = inputs(2, 5, 6)
    return {f"{groups} 份键和值": attention(ns, groups)(x, *tables(5, 4)) for groups in (4, 2, 1)}


def attention_truth(ns):
    """查询和键转过角度（复数的写法），再交给 PyTorch 的注意力。"""
    import torch

    layer, x = attention(ns), inputs(2, 5, 6)

    def turned(vectors):
        pairs = torch.complex(*vectors.chunk(2, dim=-1)) * torch.polar(torch.ones(5, 2), torch.outer(torch.arange(5.0), torch.tensor([1.0, 0.1])))
        return torch.cat([pairs.real, pairs.imag], dim=-1)

    queries, keys, values = (each(x).view(2, 5, -1, 4).transpose(1, 2) for each in (layer.W_query, layer.W_key, layer.W_value))
    context = torch.nn.functional.scaled_dot_product_attention(turned(queries), turned(keys).repeat_interleave(2, dim=1), values.repeat_interleave(2, dim=1), is_causal=True)
    expected = layer.out_proj(context.transpose(1, 2).reshape(2, 5, 16))
    return {"与 PyTorch 的注意力相同": torch.allclose(layer(x, *tables(5, 4)), expected, atol=1e-5)}


def attention_long_tables(ns):
    x, (mask, _, _) = inputs(1, 3, 6), tables(3, 4)
    return {"表比输入长": attention(ns)(x, mask, *tables(9, 4)[1:])}


def attention_gradients(ns):
    return gradients(attention(ns), inputs(2, 4, 6), *tables(4, 4))


def attention_outline(ns):
    return outline(attention(ns))


def attention_refuses(ns):
    return {"4 个头分 3 组": attention(ns, 3)}


def attention_refuses_heads(ns):
    return {"16 维分 3 个头": ns.GroupedQueryAttention(6, 16, 3, 1)}


# ── LlamaRMSNorm ──


def norm_values(ns):
    import torch

    norm, x = ns.RMSNorm(6), inputs(2, 3, 6) * 3 + 2
    fresh = norm(x)
    with torch.no_grad():
        norm.scale.copy_(inputs(6, seed=5))
    return {"新建的": fresh, "缩放之后": norm(x), "与 PyTorch 自带的相同": torch.allclose(fresh, torch.nn.functional.rms_norm(x, (6,), eps=1e-5), atol=1e-5)}


def norm_eps(ns):
    small = inputs(2, 6) * 1e-3
    return {"eps 是 1e-5": ns.RMSNorm(6)(small), "eps 是 1e-6": ns.RMSNorm(6, 1e-6)(small)}


def norm_half(ns):
    """bfloat16：在 float32 里算，再变回去；逐位与 Hugging Face 的写法相同。"""
    import torch

    norm, x = ns.RMSNorm(64).bfloat16(), (inputs(4, 64) * 50).bfloat16()
    with torch.no_grad():
        norm.scale.copy_(inputs(64, seed=5))
    wide = x.float()
    expected = norm.scale * (wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + 1e-5)).bfloat16()
    return {"数据类型": str(norm(x).dtype), "与先变宽再算的逐位相同": torch.equal(norm(x), expected)}


def norm_gradients(ns):
    return gradients(ns.RMSNorm(6), inputs(2, 6))


# ── LlamaFeedForward ──


def feed_forward(ns):
    return build(ns.FeedForward, CONFIG)


def feed_forward_values(ns):
    return {"输出": feed_forward(ns)(inputs(2, 3, 16)), "两维的输入": feed_forward(ns)(inputs(3, 16))}


def feed_forward_gradients(ns):
    return gradients(feed_forward(ns), inputs(2, 16))


def feed_forward_outline(ns):
    return outline(feed_forward(ns))


# ── LlamaModel ──


def model_values(ns):
    import torch

    model, ids = build(ns.LlamaModel, CONFIG), torch.tensor([[1, 5, 3, 5, 0], [2, 2, 7, 10, 4]])
    return {"logits": model(ids), "短的": model(ids[:, :2]), "只有一层": build(ns.LlamaModel, CONFIG | {"n_layers": 1})(ids)}


def model_settings(ns):
    """底数、拉长上下文、eps 都要从配置里来。"""
    import torch

    ids = torch.tensor([[1, 5, 3, 5, 0, 9]])
    stretch = {"original_context_length": 4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return {f"{name} 换了": build(ns.LlamaModel, CONFIG | {"emb_dim": 16, name: value})(ids) for name, value in [("rope_base", 500.0), ("rope_freq", stretch), ("norm_eps", 0.5)]}


def model_causal(ns):
    import torch

    model, ids = build(ns.LlamaModel, CONFIG), torch.tensor([[1, 5, 3, 5, 0]])
    changed = ids.clone()
    changed[0, 3] = 7
    return {"前面的 logits 不受后面影响": torch.equal(model(ids)[:, :3], model(changed)[:, :3])}


def model_outline(ns):
    return outline(ns.LlamaModel(CONFIG))


def model_refuses(ns):
    import torch

    return {"9 个词元，上下文是 8": build(ns.LlamaModel, CONFIG)(torch.zeros(1, 9, dtype=torch.long))}


def block_values(ns):
    block = build(ns.TransformerBlock, CONFIG)
    return {"一块": block(inputs(2, 5, 16), *tables(5, 4))}


# ── load_weights_into_llama ──


def hub_tensors(seed=7):
    """Hugging Face 摆法的一套小权重，名字照那边的写，不靠被查的代码。"""
    import torch

    torch.manual_seed(seed)
    d, hidden, kv, V = 16, 12, 8, 11
    layer = {"self_attn.q_proj": (d, d), "self_attn.k_proj": (kv, d), "self_attn.v_proj": (kv, d), "self_attn.o_proj": (d, d), "mlp.gate_proj": (hidden, d), "mlp.up_proj": (hidden, d), "mlp.down_proj": (d, hidden), "input_layernorm": (d,), "post_attention_layernorm": (d,)}
    shapes = {"model.embed_tokens.weight": (V, d), "model.norm.weight": (d,), "lm_head.weight": (V, d)}
    shapes |= {f"model.layers.{i}.{name}.weight": shape for i in range(2) for name, shape in layer.items()}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def loaded(ns, tensors, meta=False):
    """建一个模型，装进去。"""
    import torch

    with torch.device("meta" if meta else "cpu"):
        model = ns.LlamaModel(CONFIG)
    ns.load_weights_into_llama(model, CONFIG, tensors)
    return model


def weights_values(ns):
    import torch

    ids = torch.tensor([[1, 5, 3, 5, 0]])
    model = loaded(ns, hub_tensors())
    return {"每个参数": {name: p.detach() for name, p in model.named_parameters()}, "logits": model(ids), "建在 meta 上的": loaded(ns, hub_tensors(), meta=True)(ids)}


def weights_tied(ns):
    tensors = hub_tensors()
    del tensors["lm_head.weight"]
    model = loaded(ns, tensors)
    return {"同一个参数": model.out_head.weight is model.tok_emb.weight, "输出层": model.out_head.weight.detach()}


def weights_copied(ns):
    """改模型，不能改到文件里的张量。"""
    import torch

    tensors = hub_tensors()
    model = loaded(ns, tensors)
    with torch.no_grad():
        model.tok_emb.weight.zero_()
    return {"文件里的没有变": bool(tensors["model.embed_tokens.weight"].any()), "数据类型跟着模型": str(loaded(ns, {name: tensor.half() for name, tensor in tensors.items()}).tok_emb.weight.dtype)}


def weights_old_files(ns):
    import torch

    tensors = hub_tensors() | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(1)}
    return {"老文件里的 inv_freq 不要紧": loaded(ns, tensors).tok_emb.weight.detach()}


def weights_refuse_shape(ns):
    import torch

    return {"形状不同": loaded(ns, hub_tensors() | {"model.norm.weight": torch.ones(7)})}


def weights_refuse_nan(ns):
    tensors = hub_tensors()
    tensors["model.layers.1.mlp.up_proj.weight"][3, 2] = float("nan")
    return {"有 nan": loaded(ns, tensors)}


def weights_refuse_missing(ns):
    tensors = hub_tensors()
    del tensors["model.layers.1.mlp.up_proj.weight"]
    return {"少一个": loaded(ns, tensors)}


def weights_refuse_extra(ns):
    import torch

    return {"多一个偏置": loaded(ns, hub_tensors() | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(16)})}


COMPONENTS = [
    dict(
        name="LlamaAttention",
        title="Llama 的注意力：GQA 加 RoPE",
        section="实验",
        source=SOURCE,
        parts=["GroupedQueryAttention"],
        needs=["apply_rope"],
        task="写一个 nn.Module：GroupedQueryAttention(d_in, d_out, num_heads, num_kv_groups)，h 个查询头，键和值各 g 份。依次建 W_query、W_key、W_value（后两个的输出是 g × head_dim）、out_proj，都没有偏置；d_out 除不尽 h，或 h 除不尽 g 时 ValueError。"
        "forward(x, mask, cos, sin) 收 (b, t, d_in)：投影，分头，用给好的 apply_rope 转查询和键（值不转），每份键和值给连续的 h / g 个头用，mask 是 True 的地方不许看，缩放，softmax，拼回 (b, t, d_out)，过 out_proj。",
        blanks=["num_kv_groups * self.head_dim", "apply_rope(queries, cos, sin), apply_rope(keys, cos, sin)", "queries @ keys.transpose(2, 3)", "scores / self.head_dim**0.5", "(weights @ values).transpose(1, 2).reshape(b, t, self.d_out)"],
        cases=[("数值", attention_values), ("与 PyTorch 的比", attention_truth), ("表比输入长", attention_long_tables), ("梯度", attention_gradients), ("参数", attention_outline), ("拒绝不均分的组", attention_refuses), ("拒绝除不尽的头", attention_refuses_heads)],
        mutants=[
            ("apply_rope(queries, cos, sin), apply_rope(keys, cos, sin)", "apply_rope(queries, cos, sin), keys", "键没有转。点积里剩下的不是距离，而是查询自己在哪里。"),
            ("queries, keys = apply_rope(queries, cos, sin), apply_rope(keys, cos, sin)", "queries, keys, values = apply_rope(queries, cos, sin), apply_rope(keys, cos, sin), apply_rope(values, cos, sin)", "把值也转了。位置只管打分；取出来的内容与它在哪里无关。"),
            ("keys = keys.repeat_interleave(self.num_heads // self.num_kv_groups, dim=1)", "keys = keys.repeat(1, self.num_heads // self.num_kv_groups, 1, 1)", "键与头配错了。要 [1, 1, 2, 2]，repeat 给的是 [1, 2, 1, 2]。"),
            ("scores / self.head_dim**0.5", "scores", "忘了除以 √k。k 个独立的数的点积，方差随 k 变大；不缩放，softmax 会挤成接近 one-hot，梯度几乎为 0。"),
            ("scores / self.head_dim**0.5", "scores / self.d_out**0.5", "除以了 √d。每个头只有 k 维，要除的是 √k。"),
            (".masked_fill(mask, -torch.inf)", "", "没有用掩码。每个词元都看到了后面的，训练时就是作弊。"),
            ("self.out_proj = nn.Linear(d_out, d_out, bias=False)", "self.out_proj = nn.Linear(d_out, d_out)", "out_proj 带了偏置。Llama 里一个偏置也没有，装权重时就少一个张量。"),
        ],
    ),
    dict(
        name="LlamaRMSNorm",
        title="Llama 的 RMSNorm，半精度也算得准",
        section="实验",
        source=SOURCE,
        parts=["RMSNorm"],
        task="写一个 nn.Module：RMSNorm(emb_dim, eps=1e-5)，可训练的 scale 初值全 1。forward(x) 先变成 float32，除以最后一维的均方根 √(mean(x²) + eps)，变回 x 的数据类型，再乘 scale；不减均值。",
        blanks=["x.float()", "wide.pow(2).mean(dim=-1, keepdim=True) + self.eps", "self.scale * normed.to(x.dtype)"],
        cases=[("数值", norm_values), ("eps", norm_eps), ("半精度", norm_half), ("梯度", norm_gradients)],
        mutants=[
            ("x.float()", "x", "没有先变宽。bfloat16 只有三位有效数字，几十个平方加起来，误差就看得见了。"),
            ("normed.to(x.dtype)", "normed", "忘了变回原来的精度。半精度的输入，出来成了 float32，后面的矩阵乘法就报错。"),
            ("self.scale * normed.to(x.dtype)", "(self.scale * normed).to(x.dtype)", "先乘 scale，后变回去。Hugging Face 是先变回去再乘，末位的舍入不同；训练出来的权重认的是那一种。"),
            ("wide.pow(2).mean(dim=-1, keepdim=True)", "wide.var(dim=-1, keepdim=True, unbiased=False)", "除以了标准差。标准差先减均值，均方根不减。"),
            ("self.eps = eps", "self.eps = 1e-5", "eps 没有用参数给的。Llama 是 1e-5，别的模型有 1e-6 的，数小的时候结果就不同。"),
            ("torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self.eps)", "(wide.pow(2).mean(dim=-1, keepdim=True) + self.eps)", "乘了均方，没有开方、取倒数。要除以均方根。"),
        ],
    ),
    dict(
        name="LlamaFeedForward",
        title="Llama 的前馈网络（SwiGLU，没有偏置）",
        section="实验",
        source="ch04/experiments/exp_moe.py",
        parts=["FeedForward"],
        task="写一个 nn.Module：FeedForward(cfg)，依次建 fc1、fc2（emb_dim → hidden_dim）、fc3（hidden_dim → emb_dim），都没有偏置。forward(x) 返回 fc3(silu(fc1(x)) · fc2(x))。",
        blanks=["nn.functional.silu(self.fc1(x)) * self.fc2(x)"],
        cases=[("数值", feed_forward_values), ("参数", feed_forward_outline), ("梯度", feed_forward_gradients)],
        mutants=[
            ("silu(self.fc1(x)) * self.fc2(x)", "silu(self.fc2(x)) * self.fc1(x)", "门和内容反了。装别人的权重时就错了：gate_proj 是过 silu 的那一路。"),
            ("nn.functional.silu", "nn.functional.gelu", "激活函数用了 GELU。那是 GeGLU，Gemma 用它；Llama 用 SiLU。"),
            ("silu(self.fc1(x)) * self.fc2(x)", "silu(self.fc1(x)) + self.fc2(x)", "门是加上去的。门要乘：接近 0 就关上。"),
            ('self.fc3 = nn.Linear(cfg["hidden_dim"], cfg["emb_dim"], bias=False)', 'self.fc3 = nn.Linear(cfg["hidden_dim"], cfg["emb_dim"])', "fc3 带了偏置。Llama 里一个偏置也没有。"),
        ],
    ),
    dict(
        name="LlamaModel",
        title="整个 Llama",
        section="实验",
        source=SOURCE,
        parts=["TransformerBlock", "rope_tables", "LlamaModel"],
        needs=["apply_rope", "LlamaAttention", "LlamaRMSNorm", "LlamaFeedForward"],
        task="用给好的 GroupedQueryAttention、FeedForward、RMSNorm、compute_rope_params 写三段。TransformerBlock(cfg)：依次建 att、ff、norm1、norm2（eps 是 norm_eps），forward(x, mask, cos, sin) 先归一化、再加回去，两次。"
        "rope_tables(cfg)：这个模型的 cos、sin（k = emb_dim / n_heads，rope_base，context_length，rope_freq）。LlamaModel(cfg)：cfg，依次建 tok_emb、trf_blocks（ModuleList，n_layers 块）、final_norm、out_head（没有偏置），登记 buffer cos、sin（不存进状态字典）；"
        "forward(in_idx) 收 (b, t)，t 超过表长时 ValueError，没有位置嵌入，现画 (t, t) 的因果掩码，返回 logits (b, t, V)。",
        blanks=["self.att(self.norm1(x), mask, cos, sin)", "self.ff(self.norm2(x))", 'cfg["emb_dim"] // cfg["n_heads"]', "torch.ones(t, t, dtype=torch.bool, device=in_idx.device).triu(diagonal=1)", "self.out_head(self.final_norm(x))", "persistent=False"],
        cases=[("数值", model_values), ("一块", block_values), ("配置", model_settings), ("不偷看后面", model_causal), ("参数", model_outline), ("拒绝太长的", model_refuses)],
        mutants=[
            ("x + self.att(self.norm1(x), mask, cos, sin)", "self.att(self.norm1(x), mask, cos, sin)", "注意力后面没有加回去。没有残差连接，深了就练不动，装别人的权重也全错。"),
            ("x + self.ff(self.norm2(x))", "x + self.norm2(self.ff(x))", "前馈网络归一化放到了后面。Llama 与 GPT-2 一样，先归一化，再算，再加回去。"),
            ("self.out_head(self.final_norm(x))", "self.out_head(x)", "忘了最后的归一化。每一块都往 x 上加，出口处的大小已经没有准了。"),
            ("triu(diagonal=1)", "triu(diagonal=0)", "掩码把自己也挡住了。第一个词元什么也看不见，softmax 出来是 nan。"),
            ('cfg["rope_base"], cfg["context_length"], cfg["rope_freq"]', '10_000, cfg["context_length"], cfg["rope_freq"]', "RoPE 的底数没有用配置里的。Llama 3 是 50 万，写死 1 万，位置就全错了，却不报错。"),
            (', cfg["rope_freq"])', ")", "忘了拉长上下文的设置。Llama 3.1 之后的模型离了它，远处的位置就错。"),
            ('self.register_buffer("sin", sin, persistent=False)', 'self.register_buffer("sin", sin)', "表存进了状态字典。它算得出来，不必存，别人的权重里也没有它。"),
        ],
    ),
    dict(
        name="load_weights_into_llama",
        title="装进 Hugging Face 的 Llama 权重",
        section="实验",
        source=SOURCE,
        parts=["assign", "hub_names", "load_weights_into_llama"],
        needs=["LlamaModel"],
        task="写三个函数。assign(left, right, tensor_name=\"unknown\")：形状不同、有 nan 或无穷大时 ValueError，说是哪一个；否则返回新的 nn.Parameter，复制一份，数据类型与 left 相同。"
        "hub_names(n_layers)：我们的名字 → 那边的名字，不含输出层：model.embed_tokens、model.norm，每层的 self_attn.{q,k,v,o}_proj、mlp.gate_proj（fc1）、mlp.up_proj（fc2）、mlp.down_proj（fc3）、input_layernorm（norm1）、post_attention_layernorm（norm2），后面都是 .weight。"
        "load_weights_into_llama(model, param_config, params)：逐个装；少了、多了都 ValueError（名字以 rotary_emb.inv_freq 结尾的不算多）；没有 lm_head.weight 时，输出层与词嵌入用同一个 Parameter；模型的表还在 meta 上时，用 rope_tables(model.cfg) 补算。",
        blanks=["left.shape != right.shape", "right.to(left.dtype, copy=True)", "model.get_submodule(place)", "model.tok_emb.weight"],
        cases=[("数值", weights_values), ("共用输出层", weights_tied), ("复制一份", weights_copied), ("老的文件", weights_old_files), ("拒绝形状不同", weights_refuse_shape), ("拒绝 nan", weights_refuse_nan), ("拒绝少一个", weights_refuse_missing), ("拒绝多一个", weights_refuse_extra)],
        mutants=[
            ('"mlp.gate_proj.weight", "ff.fc2.weight": "mlp.up_proj.weight"', '"mlp.up_proj.weight", "ff.fc2.weight": "mlp.gate_proj.weight"', "gate_proj 没有装到 fc1。过 SiLU 的是 gate_proj；两个形状相同，装错了不报错，模型却说胡话。"),
            ('"norm1.scale": "input_layernorm.weight", "norm2.scale": "post_attention_layernorm.weight"', '"norm1.scale": "post_attention_layernorm.weight", "norm2.scale": "input_layernorm.weight"', "两个归一化反了。post_attention 是"
             "注意力之后、前馈网络之前的那一个，就是 norm2。"),
            ('"self_attn.q_proj.weight", "att.out_proj.weight": "self_attn.o_proj.weight"', '"self_attn.o_proj.weight", "att.out_proj.weight": "self_attn.q_proj.weight"', "q_proj 与 o_proj 装反了。两个都是方阵，不报错。"),
            ('"self_attn.k_proj.weight", "att.W_value.weight": "self_attn.v_proj.weight"', '"self_attn.v_proj.weight", "att.W_value.weight": "self_attn.k_proj.weight"', "k_proj 与 v_proj 装反了。形状一样，不报错。"),
            ("model.out_head.weight = model.tok_emb.weight", "model.out_head.weight = nn.Parameter(model.tok_emb.weight.detach().clone())", "输出层复制了一份。权重共享要的是同一个 Parameter，内存才省下来，训练时才一起变。"),
            ("right.to(left.dtype, copy=True)", "right.to(left.dtype)", "没有复制。right 是映射进来的文件，在模型上改，就改到了它。"),
            ("if not torch.stack(right.aminmax()).isfinite().all():", "if False:", "没有查 nan。一个 nan 会传遍整个模型，到时候就不知道从哪里来的了。"),
            ("if extra or missing:", "if missing:", "多出来的张量没有管。例如带偏置的模型：偏置丢了，算的就不是同一个模型。"),
            ("if model.cos.is_meta:", "if False:", "建在 meta 上的模型，表没有补算。权重都装好了，表里却没有数。"),
        ],
    ),
]
