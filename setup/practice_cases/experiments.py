"""实验里的组件：BPE 的训练、位置编码、合并的 QKV、KV 缓存、GQA、MLA、滑动窗口、RMSNorm、SwiGLU、混合专家、delta 规则、RoPE 的两种摆法

书的正文练完了再练它们，所以排在最后。怎么写一项，见 setup/practice.md「加一个组件」。这里不在顶层导入 torch：列清单要立刻。
"""

SCALE = "忘了除以 √k。k 个独立的数的点积，方差随 k 变大；不缩放，softmax 会挤成接近 one-hot，梯度几乎为 0。"
SHIFT = "掩码没有右移 s − t。有了缓存，新词元前面还有 s − t 个旧的，仍从左上角画起，它们就都看不见了。"
NEW_FIRST = "新的接到了旧的前面。次序全乱，每个查询看到的就不是它前面的词元了。"


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


def gradients(module, x):
    """输出各维乘上不同的数再求和，反向一次：返回对输入和每个参数的梯度。"""
    import torch

    x = x.clone().requires_grad_()
    out = module(x)
    (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    return {"对输入的梯度": x.grad, "对参数的梯度": {name: p.grad for name, p in module.named_parameters()}}


def outline(module):
    """参数、buffer 的名字和形状。"""
    return {
        "参数的名字和形状": [f"{name} {tuple(p.shape)}" for name, p in module.named_parameters()],
        "状态字典里的名字": list(module.state_dict()),
    }


def modes(module, x):
    """训练模式与评估模式各跑一次，前者固定种子。"""
    import torch

    torch.manual_seed(1)
    return {"训练模式的输出": module(x), "评估模式的输出": module.eval()(x)}


def in_parts(module, x, sizes):
    """带缓存的模块：把序列切成几段，一段一段地送进去。"""
    import torch

    module.reset_cache()
    return torch.cat([module(part, use_cache=True) for part in x.split(sizes, dim=1)], dim=1)


# ── 字节对编码：find_freq_pair、replace_pair、learn_merges_naive ──


def pair_values(ns):
    return {
        "一个片段": ns.find_freq_pair([([1, 2, 3, 1, 2], 1)]),
        "次数要加权": ns.find_freq_pair([([1, 2, 1, 2], 1), ([3, 4], 5)]),
        "中间的对也算": ns.find_freq_pair([([9, 1, 2, 9], 1), ([8, 1, 2, 8], 1)]),
        "一样的连在一起": ns.find_freq_pair([([7, 7, 7], 1), ([1, 2], 1)]),
    }


def pair_ties(ns):
    return {"次数相同": ns.find_freq_pair([([1, 9], 1), ([1, 2], 1), ([5, 6], 1)])}


def pair_nothing(ns):
    return {"空的": ns.find_freq_pair([]), "只有一个编号": ns.find_freq_pair([([1], 3)])}


def replace_values(ns):
    return {"中间": ns.replace_pair([1, 2, 3, 4], (2, 3), 256), "开头": ns.replace_pair([2, 3, 4], (2, 3), 256), "结尾": ns.replace_pair([1, 2, 3], (2, 3), 256), "不止一处": ns.replace_pair([2, 3, 2, 3, 9], (2, 3), 256)}


def replace_overlaps(ns):
    return {"三个一样的": ns.replace_pair([7, 7, 7], (7, 7), 256), "四个一样的": ns.replace_pair([7, 7, 7, 7], (7, 7), 256)}


def replace_nothing(ns):
    ids = [3, 2, 1, 2]
    return {"没有这一对": ns.replace_pair(ids, (2, 3), 256), "只差次序": ns.replace_pair([3, 2], (2, 3), 256), "空的": ns.replace_pair([], (2, 3), 256), "没有改动输入": ids == [3, 2, 1, 2]}


def merges_values(ns):
    return {"aaabdaaabac": ns.learn_merges_naive([(list(b"aaabdaaabac"), 1)], 3), "两种片段": ns.learn_merges_naive([(list(b"low"), 5), (list(b"lower"), 2), (list(b"newest"), 6), (list(b"widest"), 3)], 8)}


def merges_enough(ns):
    return {"没有可合并的就停": ns.learn_merges_naive([(list(b"abc"), 1)], 9), "合并 0 次": ns.learn_merges_naive([(list(b"abc"), 1)], 0), "空的": ns.learn_merges_naive([], 3)}


# ── 位置编码：sinusoidal_table、encode_rope ──


def sinusoidal_values(ns):
    return {"六个位置，八维": ns.sinusoidal_table(6, 8), "只有一个位置": ns.sinusoidal_table(1, 4), "很多位置": ns.sinusoidal_table(40, 4)[::13]}


def sinusoidal_angles(ns):
    return {"底数 100 的角度": ns.angles_of(5, 6, 100.0)}


def sinusoidal_distance(ns):
    import torch

    table = ns.sinusoidal_table(12, 16)
    products = table @ table.T
    return {"点积只与距离有关": all(torch.allclose(products.diagonal(back), products.diagonal(back)[:1].expand(12 - back), atol=1e-4) for back in range(12))}


def rope_values(ns):
    return {"转过之后": ns.encode_rope(inputs(2, 5, 8)), "一个位置": ns.encode_rope(inputs(1, 1, 4))}


def rope_properties(ns):
    import torch

    x = inputs(1, 1, 8).expand(1, 9, 8)
    turned = ns.encode_rope(x)[0]
    products = turned @ ns.encode_rope(inputs(1, 1, 8, seed=2).expand(1, 9, 8))[0].T
    return {
        "长度没有变": torch.allclose(turned.norm(dim=-1), x[0].norm(dim=-1), atol=1e-5),
        "第 0 个位置不动": torch.allclose(turned[0], x[0, 0], atol=1e-6),
        "点积只与距离有关": all(torch.allclose(products.diagonal(back), products.diagonal(back)[:1].expand(9 - abs(back)), atol=1e-4) for back in range(-8, 9)),
    }


def rope_gradients(ns):
    x = inputs(2, 3, 4).requires_grad_()
    ns.encode_rope(x).pow(3).sum().backward()
    return {"对输入的梯度": x.grad}


# ── 第 3 章　MultiHeadAttentionCombinedQKV ──


def combined(ns, **changes):
    named = {"d_in": 6, "d_out": 8, "num_heads": 4, "context_length": 5, "dropout": 0.0, **changes}
    return build(ns.MultiHeadAttentionCombinedQKV, **named)


def combined_values(ns):
    x = inputs(2, 5, 6)
    return {"4 个头": combined(ns)(x), "1 个头": combined(ns, num_heads=1)(x), "带偏置": combined(ns, qkv_bias=True)(x), "短的序列": combined(ns)(x[:, :2])}


def combined_truth(ns):
    """与 torch 自带的 nn.MultiheadAttention 比：它的 in_proj 正是 Q、K、V 叠在一起。"""
    import torch

    ours = combined(ns, d_in=8)
    theirs = torch.nn.MultiheadAttention(8, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.out_proj.load_state_dict(ours.proj.state_dict())
        x = inputs(2, 5, 8)
        expected = theirs(x, x, x, attn_mask=torch.ones(5, 5, dtype=torch.bool).triu(1), need_weights=False)[0]
        return {"与 torch 自带的相同": torch.allclose(ours(x), expected, atol=1e-5)}


def combined_attend(ns):
    return {"attend 的输出": combined(ns).attend(inputs(1, 4, 3, 2), inputs(1, 4, 3, 2, seed=2), inputs(1, 4, 3, 2, seed=3))}


def combined_gradients(ns):
    return gradients(combined(ns), inputs(2, 4, 6))


def combined_outline(ns):
    return outline(combined(ns, qkv_bias=True))


def combined_dropout(ns):
    return modes(combined(ns, dropout=0.5), inputs(1, 4, 6))


def combined_refuses(ns):
    return {"头数除不尽": combined(ns, num_heads=3)}


# ── 第 4 章　ConcatCache、PreallocatedCache、visible ──


def feed(cache, sizes, h=2, k=3):
    """一段一段地喂给缓存，记下每一次交出来的。"""
    found, start = [], 0
    keys, values = inputs(1, h, sum(sizes), k), inputs(1, h, sum(sizes), k, seed=2)
    for size in sizes:
        one, two = cache.update(keys[:, :, start : start + size], values[:, :, start : start + size])
        found.append({"键": one.clone(), "值": two.clone(), "length": cache.length})
        start += size
    return found


def concat_values(ns):
    return {"一次一个": feed(ns.ConcatCache(), [1, 1, 1]), "一次几个": feed(ns.ConcatCache(), [3, 1, 2])}


def concat_reset(ns):
    cache = ns.ConcatCache()
    fresh = {"新建时的 length": cache.length}
    feed(cache, [2, 1])
    cache.reset()
    return {**fresh, "reset 之后的 length": cache.length, "reset 之后再喂": feed(cache, [1, 1])}


def preallocated_values(ns):
    return {"一次几个": feed(ns.PreallocatedCache(8), [3, 1, 2]), "一次一个": feed(ns.PreallocatedCache(4), [1, 1, 1, 1])}


def preallocated_memory(ns):
    cache = ns.PreallocatedCache(6)
    keys, values = cache.update(inputs(1, 2, 2, 3), inputs(1, 2, 2, 3))
    shared = keys.data_ptr() == cache.keys.data_ptr() and values.data_ptr() == cache.values.data_ptr()
    return {"申请的形状": list(cache.keys.shape), "交出的是缓存的一段，没有复制": shared}


def preallocated_rewind(ns):
    """前缀复用：把 length 改小，就退回到那里。"""
    cache = ns.PreallocatedCache(5)
    feed(cache, [3, 2])
    cache.length = 2
    return {"退回到第 2 个再喂": feed(cache, [1, 2])}


def preallocated_reset(ns):
    cache = ns.PreallocatedCache(5)
    feed(cache, [3, 2])
    place = cache.keys.data_ptr()
    cache.reset()
    again = feed(cache, [2, 1])
    return {"reset 之后再喂": again, "内存还是原来那块": cache.keys.data_ptr() == place}


def visible_values(ns):
    return {"没有缓存": ns.visible(4, 4, "cpu"), "前面有旧的": ns.visible(2, 5, "cpu"), "一个新词元": ns.visible(1, 5, "cpu")}


def visible_device(ns):
    return {"建在哪里": str(ns.visible(2, 3, "meta").device)}


# ── GroupedQueryAttention ──


def gqa(ns, groups=2, **named):
    return build(ns.GroupedQueryAttention, 6, 8, named.pop("dropout", 0.0), 4, groups, **named)


def gqa_values(ns):
    x = inputs(2, 5, 6)
    return {"2 组": gqa(ns)(x), "4 组（就是多头）": gqa(ns, 4)(x), "1 组（多查询）": gqa(ns, 1)(x), "带偏置": gqa(ns, qkv_bias=True)(x)}


def gqa_truth(ns):
    """书上的写法：把键和值各复制 h / g 份，再当成普通的多头注意力。"""
    import torch

    layer, x = gqa(ns), inputs(2, 5, 6)
    queries = layer.W_query(x).view(2, 5, 4, 2).transpose(1, 2)
    keys, values = (each(x).view(2, 5, 2, 2).transpose(1, 2).repeat_interleave(2, dim=1) for each in (layer.W_key, layer.W_value))
    context = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
    return {"与书上复制键值的写法相同": torch.allclose(layer(x), layer.out_proj(context.transpose(1, 2).reshape(2, 5, 8)), atol=1e-5)}


def gqa_cached(ns):
    layer, x = gqa(ns), inputs(2, 6, 6)
    return {"一次一个": in_parts(layer, x, 1), "一次几个": in_parts(layer, x, [3, 1, 2]), "缓存的键": layer.cache_k, "缓存的值": layer.cache_v, "不用缓存就不存": gqa(ns)(x).shape[1] and layer.reset_cache() is None and layer(x) is not None and layer.cache_k is None}


def gqa_gradients(ns):
    return gradients(gqa(ns), inputs(2, 4, 6))


def gqa_outline(ns):
    return {"2 组": outline(gqa(ns)), "带偏置": outline(gqa(ns, 1, qkv_bias=True))}


def gqa_dropout(ns):
    return modes(gqa(ns, dropout=0.5), inputs(1, 4, 6))


def gqa_refuses_groups(ns):
    return {"4 个头分 3 组": gqa(ns, 3)}


def gqa_refuses_heads(ns):
    return {"8 维分 3 个头": ns.GroupedQueryAttention(6, 8, 0.0, 3, 1)}


# ── MultiHeadAttentionWithSWA ──


def swa(ns, window=3, **named):
    return build(ns.MultiHeadAttentionWithSWA, 6, 8, named.pop("dropout", 0.0), 2, sliding_window_size=window, **named)


def swa_values(ns):
    x = inputs(2, 6, 6)
    return {"窗口 3": swa(ns)(x), "窗口 1（只看自己）": swa(ns, 1)(x), "不设窗口": swa(ns, None)(x), "带偏置": swa(ns, qkv_bias=True)(x)}


def swa_truth(ns):
    import torch

    layer, x = swa(ns), inputs(2, 6, 6)
    queries, keys, values = (each(x).view(2, 6, 2, 4).transpose(1, 2) for each in (layer.W_query, layer.W_key, layer.W_value))
    seen = torch.ones(6, 6, dtype=torch.bool).tril() & torch.ones(6, 6, dtype=torch.bool).triu(-2)
    context = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=seen)
    return {"与 SDPA 加上同样的掩码相同": torch.allclose(layer(x), layer.out_proj(context.transpose(1, 2).reshape(2, 6, 8)), atol=1e-5)}


def swa_cached(ns):
    layer, x = swa(ns), inputs(2, 8, 6)
    return {"一次一个": in_parts(layer, x, 1), "一次几个": in_parts(layer, x, [2, 3, 1, 2]), "不设窗口": in_parts(swa(ns, None), x, [3, 5]), "缓存的键": layer.cache_k, "缓存的值": layer.cache_v}


def swa_gradients(ns):
    return gradients(swa(ns), inputs(2, 5, 6))


def swa_outline(ns):
    return outline(swa(ns, qkv_bias=True))


def swa_dropout(ns):
    return modes(swa(ns, dropout=0.5), inputs(1, 4, 6))


def swa_refuses(ns):
    return {"窗口是 0": swa(ns, 0)}


# ── MultiHeadLatentAttention ──


def mla(ns, **named):
    return build(ns.MultiHeadLatentAttention, 6, 8, named.pop("dropout", 0.0), 2, latent_dim=named.pop("latent_dim", 3), **named)


def mla_values(ns):
    x = inputs(2, 5, 6)
    return {"压成 3 个数": mla(ns)(x), "压成 1 个数": mla(ns, latent_dim=1)(x), "带偏置": mla(ns, qkv_bias=True)(x)}


def mla_cached(ns):
    layer, x = mla(ns), inputs(2, 6, 6)
    return {"一次一个": in_parts(layer, x, 1), "一次几个": in_parts(layer, x, [3, 1, 2]), "缓存": layer.cache_c_kv}


def mla_absorbed(ns):
    layer, x = mla(ns), inputs(2, 6, 6)
    layer.absorb = True
    return {"吸收之后的输出": layer(x), "吸收之后，一次几个": in_parts(layer, x, [3, 1, 2])}


def mla_gradients(ns):
    return gradients(mla(ns), inputs(2, 4, 6))


def mla_outline(ns):
    layer = build(ns.MultiHeadLatentAttention, 6, 8, 0.0, 2)
    return {**outline(mla(ns, qkv_bias=True)), "不写 latent_dim 时压成几个数": layer.latent_dim, "宽一些时": ns.MultiHeadLatentAttention(6, 256, 0.0, 2).latent_dim, "absorb 的初值": layer.absorb}


def mla_dropout(ns):
    return modes(mla(ns, dropout=0.5), inputs(1, 4, 6))


def mla_refuses(ns):
    return {"压成 −1 个数": mla(ns, latent_dim=-1)}


# ── RMSNorm、SwiGLU ──


def rms(ns):
    import torch

    norm = ns.RMSNorm(6)
    with torch.no_grad():
        norm.scale.copy_(inputs(6, seed=5))
    return norm


def rms_values(ns):
    x = inputs(2, 3, 6) * 3 + 2
    return {"新建的": ns.RMSNorm(6)(x), "缩放之后": rms(ns)(x), "行数等于列数": rms(ns)(inputs(6, 6))}


def rms_truth(ns):
    import torch

    x = inputs(4, 6) + 1
    return {"每一行的均方根是 1": torch.allclose(ns.RMSNorm(6)(x).pow(2).mean(dim=-1), torch.ones(4), atol=1e-4)}


def rms_small(ns):
    import torch

    return {"数都很小时（看 eps）": ns.RMSNorm(6)(inputs(2, 6) * 1e-3), "全是 0": ns.RMSNorm(6)(torch.zeros(2, 6))}


def rms_gradients(ns):
    return gradients(rms(ns), inputs(2, 6))


def rms_outline(ns):
    return {**outline(ns.RMSNorm(6)), "eps": ns.RMSNorm(6).eps}


def swiglu_values(ns):
    layer = build(ns.SwiGLU, 6)
    return {"输出": layer(inputs(2, 3, 6)), "两维的输入": layer(inputs(3, 6)), "宽一些": build(ns.SwiGLU, 10)(inputs(2, 10))}


def swiglu_outline(ns):
    return {"d = 6": outline(ns.SwiGLU(6)), "d = 10（8d/3 除不尽）": outline(ns.SwiGLU(10))}


def swiglu_gradients(ns):
    return gradients(build(ns.SwiGLU, 6), inputs(2, 6))


# ── MoEFeedForward ──


def moe(ns, top=2, experts=4, **more):
    return build(ns.MoEFeedForward, {"emb_dim": 6, "hidden_dim": 5, "num_experts": experts, "num_experts_per_tok": top} | more)


def moe_values(ns):
    x = inputs(2, 5, 6)
    return {"4 个里挑 2 个": moe(ns)(x), "挑 1 个": moe(ns, 1)(x), "全都用": moe(ns, 4)(x), "只有 1 个专家": moe(ns, 1, 1)(x)}


def moe_truth(ns):
    """一个词元一个词元地算：挑两个专家，按概率加起来。"""
    import torch

    layer, x = moe(ns), inputs(1, 4, 6)
    rows = []
    for token in x[0]:
        top, which = layer.gate(token).topk(2)
        outputs = [layer.fc3[e](torch.nn.functional.silu(layer.fc1[e](token)) * layer.fc2[e](token)) for e in which.tolist()]
        rows.append(sum(p * out for p, out in zip(torch.softmax(top, dim=0), outputs)))
    return {"与逐个词元算的相同": torch.allclose(layer(x)[0], torch.stack(rows), atol=1e-5)}


def moe_idle(ns):
    """让第 0 个专家谁也不选，后面的专家照样要算。"""
    import torch

    layer, x = moe(ns, 1), inputs(1, 6, 6).abs()
    with torch.no_grad():
        layer.gate.weight[0].fill_(-9.0)
    return {"输出": layer(x), "负载": layer.load}


def moe_statistics(ns):
    layer, x = moe(ns), inputs(2, 5, 6)
    layer(x)
    return {"负载": layer.load, "均衡损失": layer.balance_loss, "选了谁": layer.last_choice}


def moe_gradients(ns):
    return gradients(moe(ns), inputs(2, 5, 6))


def moe_switch(ns):
    """全部专家的 softmax：只挑一个时，路由也收得到梯度。"""
    layer, x = moe(ns, 1, norm_topk_prob=False), inputs(2, 5, 6)
    return {"挑 1 个": layer(x), "挑 2 个": moe(ns, norm_topk_prob=False)(x), "路由的梯度": gradients(layer, x)["对参数的梯度"]["gate.weight"]}


def moe_outline(ns):
    return outline(moe(ns))


def moe_refuses(ns):
    return {"4 个专家里挑 5 个": moe(ns, 5)}


# ── recurrent_gated_delta_rule ──


def delta_inputs(t=5):
    import torch

    queries, keys, values = inputs(2, 2, t, 3), torch.nn.functional.normalize(inputs(2, 2, t, 3, seed=2), dim=-1), inputs(2, 2, t, 3, seed=3)
    return queries, keys, values, -inputs(2, 2, t, seed=4).abs(), torch.sigmoid(inputs(2, 2, t, seed=5))


def delta_values(ns):
    import torch

    out, state = ns.recurrent_gated_delta_rule(*delta_inputs(), torch.zeros(2, 2, 3, 3))
    one, last = ns.recurrent_gated_delta_rule(*delta_inputs(1), inputs(2, 2, 3, 3, seed=6))
    return {"读出来的": out, "最后的黑板": state, "从写过的黑板开始": one, "它最后的黑板": last}


def delta_recall(ns):
    """不遗忘，写满力度：用同一个键去读，读到的就是刚写的值。"""
    import torch

    _, keys, values, _, _ = delta_inputs()
    still, full = torch.zeros(2, 2, 5), torch.ones(2, 2, 5)
    out, _ = ns.recurrent_gated_delta_rule(keys, keys, values, still, full, inputs(2, 2, 3, 3, seed=6))
    return {"读到刚写的": torch.allclose(out, values, atol=1e-5)}


def delta_pure(ns):
    import torch

    state = inputs(2, 2, 3, 3, seed=6)
    before = state.clone()
    ns.recurrent_gated_delta_rule(*delta_inputs(), state)
    return {"没有改动传进来的黑板": torch.equal(state, before)}


def delta_gradients(ns):
    import torch

    given = [each.requires_grad_() for each in delta_inputs(3)]
    out, state = ns.recurrent_gated_delta_rule(*given, torch.zeros(2, 2, 3, 3))
    (out.pow(2).sum() + state.pow(2).sum()).backward()
    return {"对各个输入的梯度": [each.grad for each in given]}


# ── 怎么比较两种训练：paired_interval、verdict ──


def interval_values(ns):
    return {
        "五个": ns.paired_interval([1.0, 2.0, 3.0, 4.0, 5.0]),
        "有正有负": ns.paired_interval([0.03, -0.01, 0.02, 0.05, 0.0, -0.02]),
        "十个": ns.paired_interval([0.1 * (i % 3) for i in range(10)]),
        "全一样": ns.paired_interval([0.25] * 8),
    }


def interval_refuses(ns):
    return {"太少": ns.paired_interval([0.1, 0.2, 0.3, 0.4])}


def verdict_values(ns):
    return {
        "整个在右边": ns.verdict([0.04, 0.05, 0.06, 0.05, 0.05]),
        "整个在左边": ns.verdict([-0.04, -0.05, -0.06, -0.05, -0.05]),
        "跨过 0": ns.verdict([0.04, -0.05, 0.06, 0.01, 0.02]),
        "平均不小，也散得开": ns.verdict([0.9, 0.1, 0.5, -0.3, 1.2]),
        "一模一样": ns.verdict([0.0] * 5),
    }


BPE, POSITION, KV = "ch02/experiments/exp_bpe_from_scratch.py", "ch02/experiments/exp_positional_encoding.py", "ch04/experiments/exp_kv_cache.py"


def rope_tables(ns):
    """表：第一行不转；两半相同；底数越大转得越慢。"""
    return {f"底数 {base}": list(ns.compute_rope_params(8, base, 5)) for base in (10_000, 500_000)}


def half_split_values(ns):
    """转过的查询；长度可以比表短。"""
    x, tables = inputs(2, 3, 6, 8), ns.compute_rope_params(8, context_length=9)
    return {"转过的": ns.apply_rope(x, *tables), "长度": ns.apply_rope(x, *tables).norm(dim=-1), "数据类型": str(ns.apply_rope(x.bfloat16(), *tables).dtype)}


def rope_stretched(ns):
    """拉长上下文：快的不动，慢的压回去，中间的过渡。"""
    return {"表": list(ns.compute_rope_params(16, 10_000, 40, {"original_context_length": 64, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}))}


def rope_refuses(ns):
    """奇数维配不成对。"""
    return {"head_dim=7": ns.compute_rope_params(7)}


def interleaved_values(ns):
    """相邻两个一对。"""
    from math import cos, sin

    import torch

    x, angles = inputs(1, 2, 4, 6), torch.outer(torch.arange(4.0), torch.tensor([1.0, 0.1, 0.01]))
    tables = [torch.cat([each(angles)] * 2, dim=1) for each in (torch.cos, torch.sin)]
    one = torch.zeros(1, 1, 2, 2)
    one[..., 0] = 1
    quarter = [torch.tensor([[each(0.0)] * 2, [each(1.0)] * 2]) for each in (cos, sin)]
    return {"转过的": ns.apply_rope_interleaved(x, *tables), "(1, 0) 转 1 弧度": ns.apply_rope_interleaved(one, *quarter)}


def half_split_rows(ns):
    """每个头里，偶数行在前、奇数行在后；头与头不混；偏置也行。"""
    import torch

    return {"两个头": ns.to_half_split(torch.arange(24.0).view(8, 3), 2), "一个头": ns.to_half_split(torch.arange(24.0).view(8, 3), 1), "偏置": ns.to_half_split(torch.arange(8.0), 2)}


COMPONENTS = [
    dict(
        name="find_freq_pair",
        title="BPE：最多的一对",
        section="实验",
        source=BPE,
        parts=["find_freq_pair"],
        task="写一个函数 find_freq_pair(sequences)。sequences 是列表，每一项是 (一个片段的编号列表, 它出现的次数)。数每一对相邻编号一共出现多少次（要乘片段的次数），返回最多的那一对，一个二元组；"
        "次数相同时返回编号小的，一对也没有时返回 None。",
        blanks=["zip(ids, ids[1:])", "counts[pair] += times", "(-counts[pair], pair)"],
        cases=[("数值", pair_values), ("次数相同", pair_ties), ("没有可数的", pair_nothing)],
        mutants=[
            ("counts[pair] += times", "counts[pair] += 1", "忘了乘片段的次数。片段去过重，出现 1000 次的也只写了一遍，次数在旁边。"),
            ("(-counts[pair], pair)", "(counts[pair], pair)", "取了出现最少的一对。min 取最小的，所以次数前面要加负号。"),
            ("(-counts[pair], pair)", "(-counts[pair], (-pair[0], -pair[1]))", "次数相同时取了编号大的。约定取小的，结果才与别的实现相同。"),
            ("(-counts[pair], pair)", "-counts[pair]", "次数相同时取了先遇到的那一对。那样换一下文本的先后，学出的词表就不同了。"),
            (", default=None", "", "一对也没有时出了错。空的文本、只剩单个编号的片段都会这样，min 要给 default。"),
            ("zip(ids, ids[1:])", "zip(ids[::2], ids[1::2])", "相邻的对漏了一半。第 2、3 个也是相邻的一对，要错开一位配对，不是两个两个地切。"),
        ],
    ),
    dict(
        name="replace_pair",
        title="BPE：合并一对",
        section="实验",
        source=BPE,
        parts=["replace_pair"],
        task="写一个函数 replace_pair(ids, pair, new_id)：从左到右，把编号列表 ids 里相邻的 pair（二元组）换成 new_id，返回新的列表，不改动 ids。换过的编号不再参与下一次：[7, 7, 7] 合并 (7, 7) 得到 [new_id, 7]。",
        blanks=["tuple(ids[i : i + 2]) == pair", "replaced.append(new_id)", "i += 2", "replaced.append(ids[i])"],
        cases=[("数值", replace_values), ("重叠", replace_overlaps), ("不该换的", replace_nothing)],
        mutants=[
            ("            i += 2\n", "            i += 1\n", "合并之后只往前走了一格。右边那个已经并进去了，还会再出现一次。"),
            ("while i < len(ids):", "while i < len(ids) - 1:", "丢了最后一个编号。它右边没有可配的，但自己要留下。"),
            ("replaced.append(new_id)", "replaced.extend([new_id, ids[i + 1]])", "合并之后还留着右边那个。一对换成一个，两个都要去掉。"),
            ("tuple(ids[i : i + 2]) == pair", "ids[i] == pair[0]", "只比了左边那个。左边相同、右边不同的，也被换掉了。"),
            ("tuple(ids[i : i + 2]) == pair", "sorted(ids[i : i + 2]) == sorted(pair)", "不分先后。(2, 3) 和 (3, 2) 是两对，合并成的词元也不同。"),
        ],
    ),
    dict(
        name="learn_merges_naive",
        title="BPE：训练",
        section="实验",
        source=BPE,
        parts=["learn_merges_naive"],
        needs=["find_freq_pair", "replace_pair"],
        task="用 find_freq_pair 和 replace_pair 写出 BPE 的训练 learn_merges_naive(sequences, num_merges)：重复 num_merges 次，找最多的一对，在每个片段里换成新编号（第一次是 256，以后依次加 1），记下这一对。"
        "没有可合并的对就提前停。返回依次合并的对的列表。",
        blanks=["range(256, 256 + num_merges)", "find_freq_pair(sequences)", "(replace_pair(ids, pair, new_id), times)", "merges.append(pair)"],
        cases=[("数值", merges_values), ("次数的边界", merges_enough)],
        mutants=[
            ("range(256, 256 + num_merges)", "range(num_merges)", "新编号从 0 开始了。0 到 255 已经是单个字节，撞上了就分不清。"),
            ("range(256, 256 + num_merges)", "range(257, 257 + num_merges)", "新编号从 257 开始了。字节占 0 到 255，第一个新编号是 256。"),
            ("        if pair is None:\n            break\n", "", "没有可合并的对时没有停。None 也被当成一对记了下来。"),
            ("        sequences = [(replace_pair(ids, pair, new_id), times) for ids, times in sequences]\n", "", "找到了却没有换掉。下一次数的还是原来的文本，找到的还是同一对。"),
            ("(replace_pair(ids, pair, new_id), times)", "(replace_pair(ids, pair, new_id), 1)", "换的时候丢了次数。从第二次合并起，常见的片段就不占优了。"),
            ("merges.append(pair)", "merges.append(new_id)", "记下的是新编号，不是那一对。分词时要知道谁和谁合并，只有编号就没用了。"),
        ],
    ),
    dict(
        name="sinusoidal_table",
        title="正弦位置编码",
        section="实验",
        source=POSITION,
        parts=["angles_of", "sinusoidal_table"],
        task="写两个函数。angles_of(length, dim, base) 返回角度 (length, dim / 2)：位置 m、第 i 对维度是 m / base^(2i / dim)。"
        "sinusoidal_table(length, dim) 用底数 10000 的角度，返回 (length, dim) 的编码：偶数维放 sin，奇数维放 cos。",
        blanks=["-torch.arange(0, dim, 2) / dim", "torch.outer(torch.arange(length).float(), speeds)", "angles_of(length, dim, 10_000)", "[angles.sin(), angles.cos()]"],
        cases=[("数值", sinusoidal_values), ("角度", sinusoidal_angles), ("性质", sinusoidal_distance)],
        mutants=[
            ("torch.arange(0, dim, 2) / dim", "torch.arange(dim // 2) / dim", "指数少了 2。第 i 对的指数是 2i / d，写成 i / d，转得最慢的那些对就没有了。"),
            ("[angles.sin(), angles.cos()], dim=-1", "[angles.sin(), angles.cos()], dim=1", "sin 和 cos 没有交错。前一半全是 sin、后一半全是 cos 也能用，但与论文的次序不同。"),
            ("[angles.sin(), angles.cos()]", "[angles.cos(), angles.sin()]", "sin 和 cos 放反了。偶数维是 sin，奇数维是 cos。"),
            ("10_000", "1_000", "底数写成了 1000。底数是 10000，小了，最慢的一对转得太快，远处的位置会撞上。"),
            ("-torch.arange(0, dim, 2) / dim", "torch.arange(0, dim, 2) / dim", "指数没有取负。后面的维度越转越快，成了乱码一样的高频。"),
        ],
    ),
    dict(
        name="encode_rope",
        title="旋转位置编码",
        section="实验",
        source=POSITION,
        parts=["encode_rope"],
        needs=["sinusoidal_table"],
        extra={"ROPE_BASE": POSITION},
        task="用给好的 angles_of 和底数 ROPE_BASE 写 encode_rope(x)：x 是 (b, t, d)，第 2i、2i + 1 维是一对，把位置 m 的每一对转过它的角度 θ，"
        "(a, b) 变成 (a·cos θ − b·sin θ, a·sin θ + b·cos θ)，放回原来的两维，返回 (b, t, d)。",
        blanks=["angles_of(x.shape[1], x.shape[2], ROPE_BASE)", "x[..., ::2], x[..., 1::2]", "even * angles.cos() - odd * angles.sin()", "even * angles.sin() + odd * angles.cos()", "torch.stack(turned, dim=-1)"],
        cases=[("数值", rope_values), ("性质", rope_properties), ("梯度", rope_gradients)],
        mutants=[
            ("even * angles.cos() - odd * angles.sin()", "even * angles.cos() + odd * angles.sin()", "第一个的符号错了。旋转是 a·cos θ − b·sin θ；两个都用加号就不是旋转，长度会变。"),
            ("even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos()", "even * angles.cos() + odd * angles.sin(), odd * angles.cos() - even * angles.sin()", "转反了方向。两边都转反，点积不变，但与别人的权重、缓存对不上。"),
            ("torch.stack(turned, dim=-1)", "torch.stack(turned, dim=2)", "没有交错放回去。偶数维和奇数维各占了一半，次序与转之前不同。"),
            ("x.shape[1], x.shape[2]", "x.shape[0], x.shape[2]", "位置的个数取成了批大小。b、t、d 里，位置是第 1 维。"),
            ("x[..., ::2], x[..., 1::2]", "x.chunk(2, dim=-1)", "一对取成了前后两半。Llama 的代码就这样配对，也是旋转，但这里约定相邻的两维是一对，权重不能混用。"),
        ],
    ),
    dict(
        name="MultiHeadAttentionCombinedQKV",
        title="合并 Q、K、V 的多头注意力",
        section="实验",
        source="ch03/experiments/exp_mha_variants.py",
        parts=["MultiHeadAttentionCombinedQKV"],
        task="写一个 nn.Module：MultiHeadAttentionCombinedQKV(d_in, d_out, num_heads, context_length, dropout=0.0, qkv_bias=False)。依次建 qkv（nn.Linear，输出 3 × d_out，行的次序是全部 Q、全部 K、全部 V）、proj、dropout、bool 掩码 mask；"
        "d_out 不能被头数整除时 ValueError。attend(queries, keys, values) 收三个 (b, h, t, k)，做因果注意力，返回 (b, h, t, k)；forward(x) 投影一次、拆成三份、分头、attend、拼回去、过 proj。",
        blanks=["3 * d_out", "queries @ keys.transpose(2, 3)", "self.mask[:t, :t], -torch.inf", "scores / self.head_dim**0.5", "view(b, t, 3, self.num_heads, self.head_dim)", "permute(2, 0, 3, 1, 4)", "context.reshape(b, t, -1)"],
        cases=[("数值", combined_values), ("与 torch 自带的比", combined_truth), ("attend", combined_attend), ("梯度", combined_gradients), ("参数", combined_outline), ("dropout", combined_dropout), ("拒绝", combined_refuses)],
        mutants=[
            ("scores / self.head_dim**0.5", "scores", SCALE),
            ("view(b, t, 3, self.num_heads, self.head_dim)", "view(b, t, self.num_heads, 3, self.head_dim).transpose(2, 3)", "先拆了头，再拆 Q、K、V。大矩阵的行是全部 Q、全部 K、全部 V，次序反了，形状照样对，内容全错。"),
            ("permute(2, 0, 3, 1, 4)", "permute(2, 0, 1, 3, 4)", "没有把头换到词元前面。成了同一个词元的头与头互相看，不报错，输出的形状也对。"),
            ("diagonal=1", "diagonal=0", "掩码把自己也遮住了。第一个词元连自己都看不到，整行都是 -inf，softmax 得到 nan。"),
            ("        scores.masked_fill_(self.mask[:t, :t], -torch.inf)\n", "", "没有用因果掩码。每个词元都看得到后面的，训练时等于抄答案。"),
            ("self.dropout(weights) @ values", "weights @ values", "忘了 dropout。训练时不丢弃任何权重，dropout 参数形同虚设。"),
            ("self.attend(queries, keys, values)", "self.attend(queries, values, keys)", "K 和 V 传反了。拿值去算分数，拿键去加权平均。"),
            ("queries, keys, values = qkv", "keys, queries, values = qkv", "Q 和 K 拆反了。单独训练看不出来，加载现成的权重就全错。"),
        ],
    ),
    dict(
        name="ConcatCache",
        title="KV 缓存（拼接）",
        section="实验",
        source=KV,
        parts=["ConcatCache"],
        task="写一个类 ConcatCache，一层的 KV 缓存。属性 keys、values（空的时候是 None）和 length（见过几个词元）。reset() 忘掉一切，新建时也调用它；"
        "update(keys, values) 收新词元的键和值 (b, h, t, k)，用 torch.cat 接在旧的后面，存下来，返回全部的键和值 (b, h, s, k)。",
        blanks=["self.keys = self.values = None", "self.length += keys.shape[2]", "torch.cat([self.keys, keys], dim=2)", "torch.cat([self.values, values], dim=2)", "self.keys, self.values = keys, values"],
        cases=[("数值", concat_values), ("重新开始", concat_reset)],
        mutants=[
            ("torch.cat([self.keys, keys], dim=2)", "torch.cat([self.keys, keys], dim=1)", "键接在了头的那一维上。词元是第 2 维（b、h、t、k）。"),
            ("torch.cat([self.keys, keys], dim=2)", "torch.cat([keys, self.keys], dim=2)", "新的键接到了旧的前面。键与值的次序对不上，每个查询都取错了值。"),
            ("        self.keys, self.values = keys, values\n", "", "接好了却没有存回去。下一次又从头开始，只看得见最新的。"),
            ("self.length += keys.shape[2]", "self.length += 1", "length 每次只加了 1。提示词一次送进来好几个，下一个词元的位置就错了。"),
            ("self.length += keys.shape[2]", "self.length = keys.shape[2]", "length 没有累加。它是见过的总数，不是这一次的个数。"),
            ("self.length = 0", 'self.length = getattr(self, "length", 0)', "reset 没有把 length 清零。换一段话，位置还从上一段的末尾数起。"),
            ("return keys, values", "return keys[:, :, -1:], values[:, :, -1:]", "只交出了最新的一个。新词元要看的是前面的全部。"),
        ],
    ),
    dict(
        name="PreallocatedCache",
        title="KV 缓存（预分配）",
        section="实验",
        source=KV,
        parts=["PreallocatedCache"],
        task="写一个类 PreallocatedCache(capacity)，一层的 KV 缓存：第一次 update(keys, values) 时按 capacity 申请好内存 keys、values（新建时是 None），以后把新词元的键和值 (b, h, t, k) 填进下一个空位，"
        "返回填过的那一段 (b, h, s, k)（不复制）。length 是填到第几格，reset 时清零，内存留着；外面把 length 改小，就从那里接着填。",
        blanks=["keys.new_empty(b, h, self.capacity, k)", "end = self.length + t", "self.keys[:, :, self.length : end] = keys", "self.length = end", "self.keys[:, :, :end], self.values[:, :, :end]"],
        cases=[("数值", preallocated_values), ("内存", preallocated_memory), ("重新开始", preallocated_reset), ("退回去", preallocated_rewind)],
        mutants=[
            ("        self.length = end\n", "", "填好了没有改 length。下一次又填在同一个地方，把旧的盖掉了。"),
            ("self.keys[:, :, :end], self.values[:, :, :end]", "self.keys[:, :, end - t : end], self.values[:, :, end - t : end]", "只交出了新来的。新词元要看的是前面的全部。"),
            ("self.keys[:, :, :end], self.values[:, :, :end]", "self.keys[:, :, :end].clone(), self.values[:, :, :end].clone()", "交出的是复制品。每一步都抄一遍旧的，预分配就白做了。"),
            ("        self.length = end\n", "        self.length = t\n", "length 没有累加。它是填到第几格，不是这一次的个数。"),
            ("self.values[:, :, self.length : end] = values", "self.values[:, :, self.length : end] = keys", "值的位置填成了键。"),
            ("self.length : end] = keys", "self.length - t : end - t] = keys", "键填错了地方。下一个空位从 length 起，到 length + t 止。"),
        ],
    ),
    dict(
        name="visible",
        title="有缓存时的因果掩码",
        section="实验",
        source=KV,
        parts=["visible"],
        task="写一个函数 visible(t, s, device)，返回 (t, s) 的 bool 掩码，建在 device 上，True 表示看得见。t 个新词元总是全部 s 个里的最后 t 个；每个看得见自己和前面的。",
        blanks=["torch.arange(s, device=device)", "torch.arange(s - t, s, device=device)[:, None]"],
        cases=[("数值", visible_values), ("设备", visible_device)],
        mutants=[
            ("torch.arange(s - t, s, device=device)", "torch.arange(t, device=device)", SHIFT),
            ("<= torch", "< torch", "看不见自己了。第一个词元整行都被遮住，softmax 得到 nan。"),
            ("<= torch", ">= torch", "比反了。键不在查询后面才看得见，反过来就只看得见未来。"),
            ("torch.arange(s - t, s, device=device)[:, None]", "torch.arange(s - t, s, device=device)", "忘了竖过来。新词元是行，键是列，少了 [:, None] 就不是一张 (t, s) 的表。"),
        ],
    ),
    dict(
        name="GroupedQueryAttention",
        title="分组查询注意力（GQA）",
        section="实验",
        source="ch04/experiments/exp_gqa.py",
        parts=["GroupedQueryAttention"],
        task="写一个 nn.Module：GroupedQueryAttention(d_in, d_out, dropout, num_heads, num_kv_groups, qkv_bias=False)，h 个查询头，键和值只有 g 份，连续的 h / g 个头合用一份。依次建 W_query、W_key、W_value（后两个的输出是 g × head_dim）、out_proj、dropout；d_out 除不尽 h，或 h 除不尽 g 时 ValueError。"
        "缓存 cache_k、cache_v 存 g 份，reset_cache() 清成 None；forward(x, use_cache=False) 收 (b, t, d_in)，做因果注意力，返回 (b, t, d_out)，use_cache 时接着缓存往下算。",
        blanks=["num_kv_groups * self.head_dim", "view(b, t, g, k)", "torch.cat([self.cache_k, keys], dim=2)", "h // g * t", "queries @ keys.transpose(2, 3)", "triu(s - t + 1)", "scores / k**0.5"],
        cases=[("数值", gqa_values), ("与书上的写法比", gqa_truth), ("缓存", gqa_cached), ("梯度", gqa_gradients), ("参数", gqa_outline), ("dropout", gqa_dropout), ("拒绝不均分的组", gqa_refuses_groups), ("拒绝除不尽的头", gqa_refuses_heads)],
        mutants=[
            ("scores / k**0.5", "scores", SCALE),
            ("triu(s - t + 1)", "triu(1)", SHIFT),
            ("queries.reshape(b, g, h // g * t, k)", "queries.view(b, h // g, g, t, k).transpose(1, 2).reshape(b, g, h // g * t, k)", "头与组配错了。应是连续的 h / g 个头归一组，这里成了隔着取。"),
            ("self.cache_k, self.cache_v = keys, values", "self.cache_k, self.cache_v = values, keys", "键和值存反了。下一步拿值去算分数。"),
            ("torch.cat([self.cache_k, keys], dim=2)", "torch.cat([keys, self.cache_k], dim=2)", NEW_FIRST),
            ("self.W_key = nn.Linear(d_in, num_kv_groups * self.head_dim, bias=qkv_bias)", "self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)", "W_key 没有变窄。它的输出应是 g 份，g × head_dim。"),
            ("num_kv_groups < 1 or num_heads % num_kv_groups != 0", "num_kv_groups < 1", "没有检查组数。头不能平均分给各组时，要早早说清楚，而不是等到 reshape 才报错。"),
            ("self.dropout(torch.softmax(scores / k**0.5, dim=-1))", "torch.softmax(scores / k**0.5, dim=-1)", "忘了 dropout。训练时不丢弃任何权重，dropout 参数形同虚设。"),
        ],
    ),
    dict(
        name="MultiHeadAttentionWithSWA",
        title="滑动窗口注意力",
        section="实验",
        source="ch04/experiments/exp_swa.py",
        parts=["MultiHeadAttentionWithSWA"],
        task="写一个 nn.Module：MultiHeadAttentionWithSWA(d_in, d_out, dropout, num_heads, qkv_bias=False, sliding_window_size=None)，每个词元只看自己和前面 W − 1 个，None 表示全看；W 小于 1 或头数除不尽时 ValueError。依次建 W_query、W_key、W_value、out_proj、dropout。"
        "缓存 cache_k、cache_v 只留最近 W 个（clone 一份，不拉着旧内存），reset_cache() 清成 None；forward(x, use_cache=False) 收 (b, t, d_in)，返回 (b, t, d_out)，一次送进来几个，结果都与整段一起算相同。",
        blanks=["torch.cat([self.cache_k, keys], dim=2)", "keys[:, :, -window:].clone(), values[:, :, -window:].clone()", "-(window + t - 1)", "triu(s - t + 1)", "tril(s - t - window)", "scores / self.head_dim**0.5"],
        cases=[("数值", swa_values), ("与 SDPA 比", swa_truth), ("缓存", swa_cached), ("梯度", swa_gradients), ("参数", swa_outline), ("dropout", swa_dropout), ("拒绝", swa_refuses)],
        mutants=[
            ("scores / self.head_dim**0.5", "scores", SCALE),
            ("tril(s - t - window)", "tril(s - t - window + 1)", "窗口少了一格。含自己一共 W 个。"),
            ("tril(s - t - window)", "tril(-window)", "左下角没有跟着右移 s − t。有缓存时，太早的词元又看得见了。"),
            ("triu(s - t + 1)", "triu(1)", SHIFT),
            (" | everything.tril(s - t - window)", "", "只遮了未来，没有遮窗口之外的过去。那就是普通的因果注意力。"),
            ("keys[:, :, -window:].clone(), values[:, :, -window:].clone()", "keys, values", "缓存没有截短。结果一样，内存却一点没省，滑动窗口的好处就没了。"),
            ("-(window + t - 1) :], values[:, :, -(window + t - 1) :]", "-window:], values[:, :, -window:]", "这一次要看的截短了。一次来 t 个，最早的那个还要看它前面的 W − 1 个。"),
        ],
    ),
    dict(
        name="MultiHeadLatentAttention",
        title="多头潜在注意力（MLA）",
        section="实验",
        source="ch04/experiments/exp_mla.py",
        parts=["MultiHeadLatentAttention"],
        task="写一个 nn.Module：MultiHeadLatentAttention(d_in, d_out, dropout, num_heads, qkv_bias=False, latent_dim=None)，latent_dim 缺省是 max(16, d_out // 8)，小于 1 或头数除不尽时 ValueError。依次建 W_query、W_DKV（往下压）、W_UK、W_UV（往上展开）、out_proj、dropout，absorb 初值 False。"
        "缓存 cache_c_kv 只存压缩的 (b, s, r)，reset_cache() 清成 None。forward(x, use_cache=False) 返回 (b, t, d_out)；absorb 为 True 时把 W_UK 并进查询、先加权压缩包再用 W_UV 展开，结果相同。",
        blanks=["max(16, d_out // 8)", "self.W_DKV(x)", "torch.cat([self.cache_c_kv, latent], dim=1)", "queries @ self.W_UK.weight.view(h, k, self.latent_dim)", "self.W_UK(latent).view(b, s, h, k).transpose(1, 2)", "triu(s - t + 1)", "scores / self.head_dim**0.5"],
        cases=[("数值", mla_values), ("缓存", mla_cached), ("吸收", mla_absorbed), ("梯度", mla_gradients), ("参数", mla_outline), ("dropout", mla_dropout), ("拒绝", mla_refuses)],
        mutants=[
            ("scores / self.head_dim**0.5", "scores", SCALE),
            ("triu(s - t + 1)", "triu(1)", SHIFT),
            ("keys = self.W_UK(latent)", "keys = self.W_UV(latent)", "键用了值的矩阵展开。W_UK 没有用上，键和值成了同一个东西。"),
            ("torch.cat([self.cache_c_kv, latent], dim=1)", "torch.cat([latent, self.cache_c_kv], dim=1)", NEW_FIRST),
            ("self.cache_c_kv = latent", "self.cache_c_kv = latent[:, -1:]", "缓存只留了最新的一个。下一步就只看得见前一个词元了。"),
            ("max(16, d_out // 8)", "d_out // 8", "压缩维度没有下限。d_out 小的时候，除以 8 就只剩一两个数。"),
            ("self.W_UV.weight.view(h, k, self.latent_dim).transpose(1, 2)", "self.W_UK.weight.view(h, k, self.latent_dim).transpose(1, 2)", "吸收的时候，值用了键的矩阵展开。不吸收时对，一打开 absorb 就错。"),
        ],
    ),
    dict(
        name="RMSNorm",
        title="均方根归一化",
        section="实验",
        source="ch04/experiments/exp_norms_and_activations.py",
        parts=["RMSNorm"],
        task="写一个 nn.Module：RMSNorm(emb_dim)，可训练的 scale 初值全 1，eps = 1e-5。forward(x) 把最后一维的每一行除以它的均方根 √(mean(x²) + eps)，再乘 scale；不减均值，没有 shift。",
        blanks=["nn.Parameter(torch.ones(emb_dim))", "self.scale * x", "x.pow(2).mean(dim=-1, keepdim=True) + self.eps"],
        cases=[("数值", rms_values), ("均方根是 1", rms_truth), ("eps", rms_small), ("梯度", rms_gradients), ("参数", rms_outline)],
        mutants=[
            ("x.pow(2).mean(dim=-1, keepdim=True)", "x.var(dim=-1, keepdim=True, unbiased=False)", "除以了标准差。标准差先减均值，均方根不减，这正是它比 LayerNorm 省的地方。"),
            ("x.pow(2).mean(dim=-1, keepdim=True)", "x.pow(2).sum(dim=-1, keepdim=True)", "求了和，没有平均。维度越大，输出就越小。"),
            ("torch.sqrt(x.pow(2).mean(dim=-1, keepdim=True) + self.eps)", "(x.pow(2).mean(dim=-1, keepdim=True) + self.eps)", "忘了开方。输入放大 10 倍，输出反而缩小 10 倍。"),
            ("self.scale * x", "x", "忘了乘 scale。它成了没有用的参数，没有梯度。"),
            ("dim=-1", "dim=0", "对错了维。每个词元各归一化各的，要对最后一维求平均。"),
            ("1e-5", "1e-2", "eps 太大。数值小的时候，它就盖过了数据。"),
        ],
    ),
    dict(
        name="SwiGLU",
        title="带门的前馈网络（SwiGLU）",
        section="实验",
        source="ch04/experiments/exp_norms_and_activations.py",
        parts=["SwiGLU"],
        task="写一个 nn.Module：SwiGLU(emb_dim)，中间宽度取 round(8 × emb_dim / 3)，依次建 fc1、fc2（升上去）、fc3（降回来），都带偏置。forward(x) 返回 fc3(silu(fc1(x)) · fc2(x))。",
        blanks=["round(8 * emb_dim / 3)", "nn.functional.silu(self.fc1(x))", "self.fc2(x)", "nn.Linear(hidden, emb_dim)"],
        cases=[("数值", swiglu_values), ("参数", swiglu_outline), ("梯度", swiglu_gradients)],
        mutants=[
            ("silu(self.fc1(x)) * self.fc2(x)", "silu(self.fc2(x)) * self.fc1(x)", "门和内容反了。从头训练看不出来，加载别人的权重就错了：fc1 是过 silu 的那一路。"),
            ("nn.functional.silu", "torch.sigmoid", "激活函数用了 sigmoid。那是最早的 GLU；silu(x) = x · sigmoid(x)。"),
            ("silu(self.fc1(x)) * self.fc2(x)", "silu(self.fc1(x)) + self.fc2(x)", "门是加上去的。门要乘：接近 0 就关上，接近 1 就放行。"),
            ("silu(self.fc1(x)) * self.fc2(x)", "silu(self.fc1(x) * self.fc2(x))", "先乘，后过的激活函数。过 silu 的只是门那一路。"),
            ("round(8 * emb_dim / 3)", "4 * emb_dim", "中间宽度没有缩小。有三个矩阵，仍取 4d，参数就比普通的前馈网络多一半，比较不公平。"),
            ("round(8 * emb_dim / 3)", "8 * emb_dim // 3", "中间宽度用了整除。除不尽时少了一维，与四舍五入的形状不同。"),
        ],
    ),
    dict(
        name="MoEFeedForward",
        title="混合专家",
        section="实验",
        source="ch04/experiments/exp_moe.py",
        parts=["MoEFeedForward"],
        task="写一个 nn.Module：MoEFeedForward(cfg)，用到 emb_dim、hidden_dim、num_experts（e）、num_experts_per_tok（j，不在 1 到 e 之间时 ValueError）。依次建 gate（e 个分数）和三个 nn.ModuleList：fc1、fc2、fc3，每个专家一组，全都不带偏置。"
        "forward(x) 收 (b, t, d)：每个词元取分数最高的 j 个专家，只在这几个之间 softmax（cfg 里 norm_topk_prob 是 False 时，取全部专家的 softmax 里它们的那几份；没写就是 True），输出是 Σ 概率 · fc3(silu(fc1) · fc2)。顺便存下 load（各专家被选中的占比）、balance_loss（e · Σ 占比 · 全部专家的 softmax 概率的平均）、last_choice（选了谁）。",
        blanks=["scores.topk(self.num_experts_per_tok, dim=-1)", "torch.softmax(top_scores, dim=-1)", "everyone.gather(1, top_experts)", "top_experts == expert", "chosen.any(dim=-1).nonzero().flatten()", "probs[chosen][:, None]", "torch.bincount(top_experts.flatten(), minlength=self.num_experts) / top_experts.numel()"],
        cases=[("数值", moe_values), ("逐个词元算", moe_truth), ("有专家没人选", moe_idle), ("负载和均衡损失", moe_statistics), ("梯度", moe_gradients), ("全部专家的 softmax", moe_switch), ("参数", moe_outline), ("拒绝", moe_refuses)],
        mutants=[
            ("torch.softmax(top_scores, dim=-1)", "torch.softmax(scores, dim=-1).gather(-1, top_experts)", "概率在全部专家之间分了。没选中的也占了份，选中的加起来不到 1，输出就小了。"),
            ("torch.softmax(top_scores, dim=-1)", "torch.softmax(top_scores, dim=0)", "softmax 的维错了。应在一个词元的几个专家之间分，不是在词元之间分。"),
            (" if self.norm_topk_prob else everyone.gather(1, top_experts)", "", "没有管 norm_topk_prob。只挑一个时，一个数的 softmax 永远是 1，路由收不到梯度；False 时要取全部专家的 softmax 里的那一份。"),
            (" * probs[chosen][:, None]", "", "忘了乘概率。topk 不可导，不乘概率，路由就没有梯度，永远学不会。"),
            ("scores.topk(self.num_experts_per_tok, dim=-1)", "scores.topk(self.num_experts_per_tok, dim=-1, largest=False)", "挑了分数最低的专家。分数高才是路由想用的，topk 默认取的就是最大的。"),
            ("(self.fc1[expert](inputs)) * self.fc2[expert](inputs)", "(self.fc1[expert](inputs))", "忘了乘另一路。SwiGLU 是 silu(fc1) · fc2，fc2 没有用上。"),
            ("self.num_experts * (self.load", "(self.load", "均衡损失忘了乘专家数。乘了它，完全平均时正好是 1，与专家数无关。"),
            ("                continue", "                break", "遇到没人选的专家就停了。后面的专家都没有算。"),
            ("out = out.index_add(", "out = torch.zeros_like(flat).index_add(", "每个专家都从 0 加起。前面专家的结果全丢了，只剩最后一个。"),
        ],
    ),
    dict(
        name="recurrent_gated_delta_rule",
        title="门控 delta 规则",
        section="实验",
        source="ch04/experiments/exp_gated_deltanet.py",
        parts=["recurrent_gated_delta_rule"],
        task="写一个函数 recurrent_gated_delta_rule(queries, keys, values, alpha, beta, state)。前三个是 (b, h, t, k)，alpha（衰减的对数，≤ 0）和 beta（力度）是 (b, h, t)，state 是黑板 (b, h, k, k)，行是键的方向。"
        "每个词元依次：黑板乘 exp(alpha)；用键读出现在记着的；差 = beta ·（值 − 读出的）；黑板加上 键ᵀ · 差；用查询读。返回全部读出的 (b, h, t, k) 和最后的黑板。",
        blanks=["alpha[:, :, i, None, None].exp()", "key @ state", "values[:, :, i, None] - memory", "key.transpose(2, 3) @ delta", "queries[:, :, i, None] @ state", "torch.cat(outputs, dim=2)"],
        cases=[("数值", delta_values), ("写了就读得到", delta_recall), ("不改动输入", delta_pure), ("梯度", delta_gradients)],
        mutants=[
            (" * alpha[:, :, i, None, None].exp()", "", "忘了遗忘。黑板只有固定大小，旧的不淡去，很快就写满了。"),
            ("alpha[:, :, i, None, None].exp()", "alpha[:, :, i, None, None]", "衰减没有取指数。alpha 是对数，直接乘上去，黑板的符号都变了。"),
            ("(values[:, :, i, None] - memory)", "values[:, :, i, None]", "没有减去已记的。那是线性注意力：同一个键写两次，读到的是两个值的和。"),
            ("beta[:, :, i, None, None] * (values[:, :, i, None] - memory)", "(values[:, :, i, None] - memory)", "忘了乘 beta。每次都写满力度，模型就不能决定这一次改多少。"),
            ("key.transpose(2, 3) @ delta", "delta.transpose(2, 3) @ key", "外积写反了方向。行是键、列是值，反过来，用键就读不到了。"),
            ("memory = key @ state", "memory = queries[:, :, i, None] @ state", "用查询去读已记的了。要改写的是这个键下面记着的，得用键去读。"),
        ],
    ),
    dict(
        name="paired_interval",
        title="配对的差，看区间",
        section="实验",
        source="ch04/experiments/exp_seed_noise.py",
        parts=["paired_interval", "verdict"],
        task="写两个函数。paired_interval(differences)：几个种子的差（5 到 10 个，否则 ValueError），返回平均和 99% 区间的半宽 t · s / √n；s 是样本标准差，t 依次是 4.604、4.032、3.707、3.499、3.355、3.250（5 到 10 个）。"
        'verdict(differences)：区间（含端点）跨过 0，返回"分不出"；整个在 0 以下，返回"更低"；以上，返回"更高"。',
        blanks=["statistics.stdev(differences)", "math.sqrt(n)", "abs(mean) <= half", "statistics.mean(differences)"],
        cases=[("数值", interval_values), ("判断", verdict_values), ("拒绝", interval_refuses)],
        mutants=[
            (" / math.sqrt(n)", "", "忘了除以 √n。s 是一个差散得多开，s / √n 才是平均散得多开：种子越多，平均越可靠。"),
            ("statistics.stdev(differences)", "statistics.pstdev(differences)", "标准差除的是 n。平均是从同一批数里算的，要除以 n − 1，否则低估。"),
            ("abs(mean) <= half", "mean <= half", "忘了取绝对值。整个在 0 以下的区间，也成了分不出。"),
            ("abs(mean) <= half", "abs(mean) < half", "端点没有算进去。差全是 0、区间只有一点，也会分出高下。"),
            ('"更低" if mean < 0 else "更高"', '"更高" if mean < 0 else "更低"', "高低反了。差是减去参照的，负的才是更低。"),
            ("t99[n] * ", "1.96 * ", "用了正态分布的 1.96。只有几个数时，标准差自己也不准，要用 t 分布，倍数大得多。"),
        ],
    ),
    dict(
        name="apply_rope",
        title="旋转位置编码，对半摆法",
        section="实验",
        source="ch05/experiments/exp_rope_layouts.py",
        parts=["compute_rope_params", "apply_rope"],
        task="写两个函数。compute_rope_params(head_dim, theta_base=10_000, context_length=4096, freq_config=None) 返回 cos、sin 两张 (t, k) 的表：位置 m、第 i 对转 m · θ_base^(−2i/k) 弧度，后一半与前一半相同；head_dim 是奇数时 ValueError。"
        "freq_config 是 Llama 3.1 拉长上下文的办法（original_context_length、factor、low_freq_factor、high_freq_factor）：在原来的长度里转的圈数，减 low 再除以 high − low，限在 0 到 1，是保留几成；其余的几成除以 factor。"
        "apply_rope(x, cos, sin) 收 (b, h, t, k)，第 i 个数和第 i + k/2 个数是一对，转过去，数据类型不变；表可以比 t 长。",
        blanks=["torch.cat([-second, first], dim=-1)", "(x * cos[:t] + turned * sin[:t]).to(x.dtype)", "torch.outer(torch.arange(context_length).float(), inv_freq)", "torch.cat([angles, angles], dim=1)"],
        cases=[("表", rope_tables), ("数值", half_split_values), ("拉长上下文", rope_stretched), ("拒绝", rope_refuses)],
        mutants=[
            ("torch.cat([-second, first], dim=-1)", "torch.cat([second, -first], dim=-1)", "转反了方向。第一个数减去第二个数的 sin，第二个数加上第一个数的 sin。"),
            ("torch.cat([-second, first], dim=-1)", "torch.cat([second, first], dim=-1)", "少了一个负号。那不是旋转，长度会变。"),
            ("x[..., : k // 2], x[..., k // 2 :]", "x[..., ::2], x[..., 1::2]", "配成了相邻的两个。表是对半的，两种摆法混在一起，转出来谁也不是。"),
            ("torch.arange(0, head_dim, 2)", "torch.arange(head_dim // 2)", "指数差了一倍。第 i 对是 θ 的 −2i/k 次方，步子是 2。"),
            (".to(x.dtype)", "", "忘了变回原来的数据类型。表是 float32，半精度的查询会悄悄变成 float32。"),
            ("inv_freq / factor", "inv_freq * factor", "拉长时转得更快了。位置要压回原来的范围，角度除以 factor。"),
        ],
    ),
    dict(
        name="to_half_split",
        title="RoPE 的两种摆法：换行",
        section="实验",
        source="ch05/experiments/exp_rope_layouts.py",
        parts=["apply_rope_interleaved", "to_half_split"],
        task="写两个函数。apply_rope_interleaved(x, cos, sin)：相邻摆法，第 2i 个数和第 2i + 1 个数是一对，x 是 (b, h, t, k)，表是 (至少 t, k)，两半相同，数据类型不变。"
        "to_half_split(weight, num_heads)：W_query 或 W_key 的行（或偏置）从相邻摆法换成对半摆法：每个头里，偶数行依次排到前一半，奇数行排到后一半；形状不变。",
        blanks=["torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)", "weight.reshape(num_heads, rows // 2, 2, -1)", "turned.flatten(-2)", "x[..., ::2], x[..., 1::2]"],
        cases=[("转", interleaved_values), ("换行", half_split_rows)],
        mutants=[
            ("torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)", "torch.stack([even * cos + odd * sin, odd * cos - even * sin], dim=-1)", "转反了方向。(1, 0) 转一点，第二个数应当变正。"),
            ("dim=-1)  # (b, h, t, k/2, 2)", "dim=-2)", "叠错了维。要两个两个地排回去，叠在倒数第二维，就成了前一半、后一半。"),
            ("num_heads, rows // 2, 2, -1", "num_heads, 2, rows // 2, -1", "方向反了。这是从对半换成相邻，形状一样，也不报错。"),
            ("weight.reshape(num_heads, rows // 2, 2, -1)  # (h, k/2, 2, d)　第几对、对里第几个\n    return pairs.transpose(1, 2)", "weight.reshape(1, rows * num_heads // 2, 2, -1)\n    return pairs.transpose(1, 2)", "头与头混了。换行只在每个头里换。"),
        ],
    ),
]
