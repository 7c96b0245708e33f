"""量化和加快的组件：一行一组的量化、Q4_1 和 Q8_0 反量化、合并矩阵

怎么写一项，见 setup/practice.md「加一个组件」。这里不在顶层导入 torch：列清单要立刻。
"""


def numbers(*shape, seed=1):
    """一份固定的输入。"""
    import torch

    torch.manual_seed(seed)
    return torch.randn(*shape)


# ── quantize_rows、dequantize_rows ──


def both(ns, weight, *args):
    q, scale, low = ns.quantize_rows(weight, *args)
    return {"整数": q, "步长": scale.float(), "最小值": low.float(), "还原": ns.dequantize_rows(q, scale, low, weight.shape[1])}


def quantize_symmetric(ns):
    return {f"{bits} 位，{size} 个一组": both(ns, numbers(3, 64) * 0.05, bits, size) for bits, size in [(8, 32), (4, 32), (4, 16), (2, 8)]} | {"一行一组": both(ns, numbers(3, 64), 4)}


def quantize_with_low(ns):
    return {f"{bits} 位，{size} 个一组": both(ns, numbers(3, 64) * 0.05 + 0.1, bits, size, True) for bits, size in [(8, 32), (4, 32), (2, 8)]}


def quantize_short_group(ns):
    """最后一组不够长，全是正数：填 0 的话，最小值就成了 0。"""
    return {f"最小值：{zero}": both(ns, numbers(2, 20).abs() + 2, 4, 8, zero) for zero in (False, True)}


def quantize_flat(ns):
    """全是 0 的一组、全相同的一组：步长是 0。"""
    import torch

    weight = numbers(2, 16)
    weight[0, :8], weight[1, 8:] = 0, 0.25
    return {f"最小值：{zero}": both(ns, weight, 4, 8, zero) for zero in (False, True)} | {"一行 0": both(ns, torch.zeros(1, 8), 8)}


def quantize_untouched(ns):
    weight = numbers(2, 16)
    before = weight.clone()
    ns.quantize_rows(weight, 4, 8, True)
    return {"原来的权重没有被改": bool((weight == before).all())}


def quantize_refuses_bits(ns):
    return {"9 位": ns.quantize_rows(numbers(2, 8), 9, 4)}


def quantize_refuses_size(ns):
    return {"0 个一组": ns.quantize_rows(numbers(2, 8), 4, 0)}


# ── dequantize_q4_1、dequantize_q8_0 ──


def blocks(size, halves, rows=3, count=2):
    """随机的字节，开头几个半精度换成正常的数。"""
    import torch

    torch.manual_seed(2)
    data = torch.randint(0, 256, (rows, count, size), dtype=torch.uint8)
    data[..., : 2 * halves] = (torch.randn(rows, count, halves) * 0.1).half().view(torch.uint8)
    return data.flatten(1)


def q4_1_values(ns):
    return {"还原": ns.dequantize_q4_1(blocks(20, 2)), "一块": ns.dequantize_q4_1(blocks(20, 2, 1, 1))}


def q4_1_order(ns):
    """步长 1，最小值 0：还原出来的就是整数，看得清次序。"""
    import torch

    data = torch.arange(20, dtype=torch.uint8)[None] * 16 + torch.arange(20, dtype=torch.uint8) % 16
    data[0, :4] = torch.tensor([1.0, 0.0]).half().view(torch.uint8)
    return {"32 个": ns.dequantize_q4_1(data)}


def q8_0_values(ns):
    return {"还原": ns.dequantize_q8_0(blocks(34, 1)), "一块": ns.dequantize_q8_0(blocks(34, 1, 1, 1))}


def q8_0_negative(ns):
    import torch

    data = torch.arange(112, 146, dtype=torch.uint8)[None].clone()  # 从 114 到 145：128 以后的是负数
    data[0, :2] = torch.tensor([0.5]).half().view(torch.uint8)
    return {"32 个": ns.dequantize_q8_0(data)}


def exact(ns, name, size, halves):
    """步长很小、整数很大：先变成 float32 再乘，结果逐位固定。"""
    import torch

    data = blocks(size, halves, 4, 3)
    data[:, :2] = torch.tensor([6e-8]).half().view(torch.uint8)  # 非规格化数
    value = getattr(ns, name)(data)
    return {"数据类型": str(value.dtype), "最大的": (value.abs().amax(dim=1) * 1e4), "和": value.double().sum().item()}


def q4_1_exact(ns):
    return exact(ns, "dequantize_q4_1", 20, 2)


def q8_0_exact(ns):
    return exact(ns, "dequantize_q8_0", 34, 1)


# ── fuse_weights ──


def layer():
    """一层的样子：h = 4、g = 2、k = 3、d = 12、f = 10。"""
    from types import SimpleNamespace

    import torch

    torch.manual_seed(3)
    shapes = {"att": {"W_query": (12, 12), "W_key": (12, 6), "W_value": (12, 6), "out_proj": (12, 12)}, "ff": {"fc1": (12, 10), "fc2": (12, 10), "fc3": (10, 12)}}
    return SimpleNamespace(**{part: SimpleNamespace(**{name: torch.nn.Linear(*shape, bias=False) for name, shape in each.items()}) for part, each in shapes.items()})


def fuse_values(ns):
    return dict(zip(["Q、K、V", "out_proj", "闸门和另一路", "fc3"], ns.fuse_weights(layer())))


def fuse_same_product(ns):
    """乘一次再切开，与分别乘相同。"""
    import torch

    block, x = layer(), numbers(2, 5, 12)
    qkv, out, up, down = ns.fuse_weights(block)
    return {
        "Q、K、V": [torch.allclose(a, b(x), atol=1e-5) for a, b in zip((x @ qkv.T).split([12, 6, 6], dim=-1), (block.att.W_query, block.att.W_key, block.att.W_value))],
        "闸门和另一路": [torch.allclose(a, b(x), atol=1e-5) for a, b in zip((x @ up.T).chunk(2, dim=-1), (block.ff.fc1, block.ff.fc2))],
        "要梯度吗": [each.requires_grad for each in (qkv, out, up, down)],
    }


COMPONENTS = [
    dict(
        name="quantize_rows",
        title="分组量化",
        section="实验",
        source="ch05/experiments/exp_quantization.py",
        parts=["quantize_rows", "dequantize_rows"],
        task="写两个函数。quantize_rows(weight, bits, group_size=None, zero_point=False)：(n, c) 的每一行每 group_size 个一组（None 是一行一组；最后一组不够，用这一行最后一个权重填满），返回整数 (n, m, z)（int16）、步长 (n, m, 1)、最小值 (n, m, 1)，后两个存成半精度。"
        "zero_point 为 False 时步长是 最大的绝对值 ÷ (2^(bits−1) − 1)，最小值是 0；为 True 时最小值是组里最小的，步长是 (最大 − 最小) ÷ (2^bits − 1)；整数 = (权重 − 最小值) ÷ 步长，四舍五入（用还没有变成半精度的步长），步长是 0 的组整数都是 0。bits 不在 2 到 8、group_size 小于 1 时 ValueError。"
        "dequantize_rows(q, scale, low, columns)：步长 · q + 最小值，float32，(n, columns)。",
        blanks=['F.pad(weight, (0, -columns % size), mode="replicate").unflatten(1, (-1, size))', "(groups.amax(dim=-1, keepdim=True) - low) / top", "groups.abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 1)", "(groups - low).div_(scale.where(scale > 0, 1.0)).round_()", "(q * scale.float()).add_(low.float()).flatten(1)[:, :columns]"],
        cases=[("对称的", quantize_symmetric), ("有最小值", quantize_with_low), ("最后一组短", quantize_short_group), ("全相同的一组", quantize_flat), ("不改原来的", quantize_untouched), ("拒绝 9 位", quantize_refuses_bits), ("拒绝 0 个一组", quantize_refuses_size)],
        mutants=[
            ("groups.abs().amax(dim=-1, keepdim=True)", "groups.amax(dim=-1, keepdim=True)", "忘了取绝对值。最大的是负数时，步长太小，整数就超出了范围。"),
            ("(2 ** (bits - 1) - 1)", "2 ** (bits - 1)", "步数多了一步。对称的 8 位是 −127 到 127，一边 127 步。"),
            ("2**bits - 1", "2**bits", "步数多了一步。4 位有 16 个取值，从最小到最大是 15 步。"),
            ("(groups - low).div_(", "groups.div(", "没有减最小值。存的是离最小值几步。"),
            (".round_().to(torch.int16)", ".to(torch.int16)", "没有四舍五入。直接变成整数是向 0 舍，误差大一倍，还偏向一边。"),
            ('mode="replicate"', 'mode="constant"', "最后一组用 0 填。全是正数的组，最小值就成了 0，步长跟着变大。"),
            ("groups.amax(dim=-1, keepdim=True) - low", "groups.amax(dim=-1, keepdim=True)", "步长没有减最小值。权重都在 0.1 附近时，步长就大了好几倍。"),
            ("scale.half(), low.half()", "scale, low", "步长和最小值没有存成半精度。一组 32 个，多出的 4 个字节就是每个权重多 1 位。"),
            ("[:, :columns]", "", "填进去的没有切掉。还原出来的比原来宽。"),
            (".add_(low.float())", "", "还原时没有加最小值。整行都往 0 挪了一截。"),
        ],
    ),
    dict(
        name="dequantize_q4_1",
        title="Q4_1 反量化",
        section="实验",
        source="ch05/experiments/exp_real_llm.py",
        parts=["dequantize_q4_1"],
        task="写函数 dequantize_q4_1(data)：data 是 uint8，(行, 块数 · 20)；一块 20 个字节：半精度的步长 d、半精度的最小值 m，再是 16 个字节，第 j 个字节的低 4 位是第 j 个权重的整数 q，高 4 位是第 j + 16 个的。返回 float32 的 d · q + m，(行, 块数 · 32)。",
        blanks=["data.unflatten(-1, (-1, 20))", "blocks[..., :4].contiguous().view(torch.float16).float().split(1, dim=-1)", "torch.cat([quants & 15, quants >> 4], dim=-1)", "(d * q + m).flatten(-2)"],
        cases=[("数值", q4_1_values), ("次序", q4_1_order), ("精度", q4_1_exact)],
        mutants=[
            ("[quants & 15, quants >> 4]", "[quants >> 4, quants & 15]", "低 4 位和高 4 位反了。每块的前后两半对调，数都还在，模型却说胡话。"),
            ("torch.cat([quants & 15, quants >> 4], dim=-1)", "torch.stack([quants & 15, quants >> 4], dim=-1).flatten(-2)", "当成了相邻的两个。一个字节里的两个权重，隔着 16 个。"),
            ("d, m = ", "m, d = ", "步长和最小值反了。文件里步长在前。"),
            ("(d * q + m)", "(d * (q - 8) + m)", "减了 8。那是 Q4_0 的写法：它没有最小值，所以整数从 −8 起；Q4_1 从 0 起。"),
            ("quants & 15", "quants & 7", "只取了低 3 位。4 位是 & 15。"),
            ("(d * q + m)", "d * q - m", "减了最小值。Q4_1 存的 m 是加上去的；减的是 K 系列的写法。"),
        ],
    ),
    dict(
        name="dequantize_q8_0",
        title="Q8_0 反量化",
        section="实验",
        source="ch05/experiments/exp_real_llm.py",
        parts=["dequantize_q8_0"],
        task="写函数 dequantize_q8_0(data)：data 是 uint8，(行, 块数 · 34)；一块 34 个字节：半精度的步长 d，再是 32 个有符号的 8 位整数 q。返回 float32 的 d · q，(行, 块数 · 32)。",
        blanks=["data.unflatten(-1, (-1, 34))", "blocks[..., :2].contiguous().view(torch.float16).float()", "(d * blocks[..., 2:].contiguous().view(torch.int8)).flatten(-2)"],
        cases=[("数值", q8_0_values), ("负数", q8_0_negative), ("精度", q8_0_exact)],
        mutants=[
            (".view(torch.int8)", ".float()", "当成了没有符号的。负数都成了 128 到 255，大的权重全反了号。"),
            (".contiguous().view(torch.int8)", ".to(torch.int16) - 128", "减了 128。它存的是补码，不是往上挪了 128 的。"),
            ("view(torch.float16).float()", "view(torch.float16)", "步长没有先变成 float32。半精度乘整数，结果还是半精度，大的数只剩三位。"),
            ("view(torch.float16)", "view(torch.bfloat16)", "当成了 bfloat16。同样是 16 位，指数的位数不同，数就完全不同。"),
            ("(-1, 34)", "(34, -1)", "块和字节反了。只有一块时看不出来，多了就全错位。"),
        ],
    ),
    dict(
        name="fuse_weights",
        title="合并矩阵",
        section="实验",
        source="ch05/experiments/exp_real_llm_speed.py",
        parts=["fuse_weights"],
        task="写函数 fuse_weights(block)：一层的七个矩阵变成四个，返回 (Q、K、V 依次按行叠成的, att.out_proj 的, ff.fc1 和 ff.fc2 依次按行叠成的, ff.fc3 的)，都不带梯度。线性层在 block.att（W_query、W_key、W_value、out_proj）和 block.ff（fc1、fc2、fc3）里。",
        blanks=["torch.cat([linear.weight.detach() for linear in (att.W_query, att.W_key, att.W_value)])", "torch.cat([ff.fc1.weight.detach(), ff.fc2.weight.detach()])"],
        cases=[("四个矩阵", fuse_values), ("乘出来相同", fuse_same_product)],
        mutants=[
            ("(att.W_query, att.W_key, att.W_value)", "(att.W_key, att.W_query, att.W_value)", "次序反了。切开时按 Q、K、V 切，叠的时候就得按 Q、K、V 叠。"),
            ("(att.W_query, att.W_key, att.W_value)", "(att.W_query, att.W_value, att.W_key)", "键和值对调了。两个一样大，不报错，注意力全乱。"),
            ("[ff.fc1.weight.detach(), ff.fc2.weight.detach()]", "[ff.fc2.weight.detach(), ff.fc1.weight.detach()]", "闸门和另一路反了。只有闸门过 SiLU，反了，结果就不同。"),
            ("linear.weight.detach() for linear", "linear.weight for linear", "没有 detach。叠出来的还连着计算图，占着内存，也不能原地改。"),
            ("att.out_proj.weight.detach(), up", "att.out_proj.weight.detach().T, up", "多转置了一次。nn.Linear 的 weight 本来就是（输出，输入），方的矩阵转错了也不报错。"),
        ],
    ),
]
