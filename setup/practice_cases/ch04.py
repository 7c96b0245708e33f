"""第 4 章的手敲练习：层归一化、GELU、前馈网络、残差、Transformer 块，拼成 GPT，再让它生成

怎么写一项，见 setup/practice.md「加一个组件」。这里不在顶层导入 torch：列清单要立刻。
"""

CFG = {"vocab_size": 11, "context_length": 6, "emb_dim": 8, "n_heads": 2, "n_layers": 2, "drop_rate": 0.0, "qkv_bias": False}


def config(**changes):
    """很小的配置，跑得快；要改哪一项就写哪一项。"""
    return {**CFG, **changes}


def inputs(*shape, seed=1):
    """一份固定的输入。"""
    import torch

    torch.manual_seed(seed)
    return torch.randn(*shape)


def build(kind, *arguments, seed=123):
    """用固定的种子建一个模块：各层创建的次序不同，初始值就不同。"""
    import torch

    torch.manual_seed(seed)
    return kind(*arguments)


def gradients(module, *x):
    """输出各维乘上不同的数再求和，反向一次：返回对输入（浮点数的话）和每个参数的梯度。"""
    import torch

    x = [each.clone().requires_grad_() if each.is_floating_point() else each for each in x]
    out = module(*x)
    (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    found = {"对参数的梯度": {name: p.grad for name, p in module.named_parameters()}}
    return {**found, "对输入的梯度": x[0].grad} if x[0].is_floating_point() else found


def outline(module):
    """参数、buffer 的名字和形状：与原书相同，存下的权重才能互相读。"""
    return {
        "参数的名字和形状": [f"{name} {tuple(p.shape)}" for name, p in module.named_parameters()],
        "状态字典里的名字": list(module.state_dict()),
    }


def modes(module, x):
    """训练模式与评估模式各跑一次，前者固定种子。"""
    import torch

    torch.manual_seed(1)
    return {"训练模式的输出": module(x), "评估模式的输出": module.eval()(x)}


def ids(b=2, t=4):
    """词元编号。"""
    import torch

    return (torch.arange(b * t).view(b, t) * 7 + 3) % 11


# ── 4.1　DummyTransformerBlock、DummyLayerNorm、DummyGPTModel ──


def dummy_block(ns):
    block, x = ns.DummyTransformerBlock(config()), inputs(2, 3, 8)
    out = block(x)
    return {"原样放行": out, "就是同一个张量": out is x, "参数": outline(block)}


def dummy_norm(ns):
    norm, x = ns.DummyLayerNorm(8), inputs(2, 3, 8)
    out = norm(x)
    return {"原样放行": out, "就是同一个张量": out is x, "参数": outline(norm), "可以给 eps": ns.DummyLayerNorm(8, eps=1e-3)(x)}


def dummy_values(ns):
    model = build(ns.DummyGPTModel, config())
    return {"logits": model(ids()), "一个词元": model(ids(1, 1)), "正好 context_length": model(ids(1, 6))}


def dummy_outline(ns):
    model = ns.DummyGPTModel(config())
    return {**outline(model), "块数": len(model.trf_blocks), "块的类型": type(model.trf_blocks[0]).__name__, "归一化的类型": type(model.final_norm).__name__}


def dummy_dropout(ns):
    return modes(build(ns.DummyGPTModel, config(drop_rate=0.5)), ids())


def dummy_device(ns):
    """放到 meta 设备上（只记形状的假设备，每台电脑都有）：位置编号要建在输入所在的设备上。"""
    seen, model = [], ns.DummyGPTModel(config()).to("meta")
    model.pos_emb.register_forward_pre_hook(lambda _, given: seen.append(str(given[0].device)))
    return {"输出的设备": str(model(ids().to("meta")).device), "位置编号的设备": seen}


# ── 4.2　LayerNorm ──


def norm_with(ns, seed=5):
    import torch

    norm = ns.LayerNorm(6)
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in norm.parameters():
            p.copy_(torch.randn(6))
    return norm


def norm_values(ns):
    x = inputs(2, 3, 6) * 3 + 2
    return {"新建的": ns.LayerNorm(6)(x), "缩放平移之后": norm_with(ns)(x)}


def norm_truth(ns):
    import torch

    x = inputs(4, 6)
    return {"与 torch 自带的相同": torch.allclose(ns.LayerNorm(6)(x), torch.nn.functional.layer_norm(x, (6,)), atol=1e-5)}


def norm_small(ns):
    import torch

    return {"方差很小时（看 eps）": ns.LayerNorm(6)(inputs(2, 6) * 1e-3), "方差是 0": ns.LayerNorm(6)(torch.ones(2, 6))}


def norm_shapes(ns):
    norm = ns.LayerNorm(6)
    return {"一维": norm(inputs(6)), "四维": norm(inputs(2, 2, 3, 6)), "行数等于列数": norm(inputs(6, 6)), "一个样本": norm(inputs(1, 6))}


def norm_gradients(ns):
    return gradients(norm_with(ns), inputs(2, 6))


def norm_outline(ns):
    norm = ns.LayerNorm(6)
    return {**outline(norm), "eps": norm.eps, "scale 的初值": norm.scale, "shift 的初值": norm.shift}


# ── 4.3　GELU、FeedForward ──


def gelu_values(ns):
    import torch

    return {"从 -5 到 5": ns.GELU()(torch.linspace(-5, 5, 41)), "0 处": ns.GELU()(torch.zeros(1))}


def gelu_truth(ns):
    import torch

    x = torch.linspace(-5, 5, 41)
    return {"与 torch 的 tanh 近似相同": torch.allclose(ns.GELU()(x), torch.nn.functional.gelu(x, approximate="tanh"), atol=1e-6)}


def gelu_digits(ns):
    """float64 下放大看：近似版与精确版只差万分之几。"""
    import torch

    return {"× 1000": ns.GELU()(torch.linspace(-3, 3, 13, dtype=torch.float64)) * 1000}


def gelu_gradients(ns):
    return gradients(ns.GELU(), inputs(3, 4))


def gelu_shape(ns):
    return {"形状": ns.GELU()(inputs(2, 3, 4)), "没有参数": outline(ns.GELU())}


def ff_values(ns):
    ff, x = build(ns.FeedForward, config()), inputs(2, 3, 8)
    return {"输出": ff(x), "两维的输入": ff(x[0])}


def ff_alone(ns):
    import torch

    ff, x = build(ns.FeedForward, config()), inputs(2, 3, 8)
    return {"逐个词元算，与一起算相同": torch.allclose(ff(x[:, 1]), ff(x)[:, 1], atol=1e-5)}


def ff_outline(ns):
    ff = ns.FeedForward(config())
    return {**outline(ff), "各层": [type(layer).__name__ for layer in ff.layers]}


def ff_gradients(ns):
    return gradients(build(ns.FeedForward, config()), inputs(2, 3, 8))


# ── 4.4　ExampleDeepNeuralNetwork、print_gradients ──


def deep_values(ns):
    x = inputs(2, 3)
    return {
        "没有残差": build(ns.ExampleDeepNeuralNetwork, [3, 3, 3, 1], False)(x),
        "有残差": build(ns.ExampleDeepNeuralNetwork, [3, 3, 3, 1], True)(x),
        "宽度先变后不变": build(ns.ExampleDeepNeuralNetwork, [3, 4, 4, 2], True)(x),
    }


def deep_outline(ns):
    network = ns.ExampleDeepNeuralNetwork([3, 3, 2], True)
    return {**outline(network), "激活函数": [type(layer[1]).__name__ for layer in network.layers], "use_shortcut": network.use_shortcut}


def deep_gradients(ns):
    return {"没有残差": gradients(build(ns.ExampleDeepNeuralNetwork, [3, 3, 3, 1], False), inputs(2, 3)), "有残差": gradients(build(ns.ExampleDeepNeuralNetwork, [3, 3, 3, 1], True), inputs(2, 3))}


def deep_one_row(ns):
    return {"一个样本": build(ns.ExampleDeepNeuralNetwork, [3, 3, 1], True)(inputs(1, 3))}


def printed(ns, shortcut, seed=123):
    """print_gradients 的返回值、打印的话、留在参数里的梯度。"""
    import contextlib
    import io

    import torch

    network, out = build(ns.ExampleDeepNeuralNetwork, [3, 3, 3, 1], shortcut, seed=seed), io.StringIO()
    with contextlib.redirect_stdout(out):
        returned = ns.print_gradients(network, torch.tensor([[1.0, 0.0, -1.0]]))
    return {"返回的列表": returned, "打印了几行": len(out.getvalue().strip().splitlines()), "提到了哪几层": [name for name, _ in network.named_parameters() if name in out.getvalue()], "留在参数里的梯度": [p.grad for p in network.parameters()]}


def gradients_without(ns):
    return printed(ns, False)


def gradients_with(ns):
    return printed(ns, True)


def gradients_twice(ns):
    import contextlib
    import io

    import torch

    network = build(ns.ExampleDeepNeuralNetwork, [3, 3, 1], True)
    with contextlib.redirect_stdout(io.StringIO()):
        ns.print_gradients(network, torch.tensor([[1.0, 0.0, -1.0]]))
        return {"第二次的列表（梯度会累加）": ns.print_gradients(network, torch.tensor([[1.0, 0.0, -1.0]]))}


# ── 4.5　TransformerBlock ──


def block_values(ns):
    x = inputs(2, 4, 8)
    return {"输出": build(ns.TransformerBlock, config())(x), "带偏置": build(ns.TransformerBlock, config(qkv_bias=True))(x), "4 个头": build(ns.TransformerBlock, config(n_heads=4))(x)}


def block_shapes(ns):
    block = build(ns.TransformerBlock, config())
    return {"一个词元": block(inputs(1, 1, 8)), "正好 context_length": block(inputs(1, 6, 8))}


def block_outline(ns):
    return outline(ns.TransformerBlock(config(qkv_bias=True)))


def block_gradients(ns):
    return gradients(build(ns.TransformerBlock, config()), inputs(2, 4, 8))


def block_dropout(ns):
    return modes(build(ns.TransformerBlock, config(drop_rate=0.5)), inputs(1, 4, 8))


def block_big(ns):
    """输入放大 100 倍：主路上没有归一化，所以输出也大；支路先归一化，所以修改量几乎不变。"""
    block, x = build(ns.TransformerBlock, config()), inputs(2, 4, 8)
    return {"修改量": block(x * 100) - x * 100}


def block_two_norms(ns):
    """让两个归一化的权重不同，看有没有用混。"""
    import torch

    block = build(ns.TransformerBlock, config())
    with torch.no_grad():
        block.norm1.scale.fill_(2.0)
        block.norm2.shift.fill_(0.5)
    return {"输出": block(inputs(2, 4, 8))}


def block_keeps_input(ns):
    import torch

    block, x = build(ns.TransformerBlock, config()), inputs(2, 4, 8)
    before = x.clone()
    block(x)
    return {"没有改动输入": torch.equal(before, x)}


# ── 4.6　GPTModel ──


def gpt_values(ns):
    model = build(ns.GPTModel, config())
    return {"logits": model(ids()), "一个词元": model(ids(1, 1)), "正好 context_length": model(ids(1, 6))}


def gpt_layers(ns):
    return {"1 层": build(ns.GPTModel, config(n_layers=1))(ids()), "3 层": build(ns.GPTModel, config(n_layers=3, qkv_bias=True))(ids())}


def gpt_outline(ns):
    model = ns.GPTModel(config())
    return {**outline(model), "参数总数": sum(p.numel() for p in model.parameters())}


def gpt_gradients(ns):
    return gradients(build(ns.GPTModel, config(n_layers=1)), ids())


def gpt_dropout(ns):
    return modes(build(ns.GPTModel, config(drop_rate=0.5)), ids())


def gpt_too_long(ns):
    return {"比 context_length 长": build(ns.GPTModel, config())(ids(1, 7))}


def gpt_device(ns):
    """放到 meta 设备上（只记形状的假设备，每台电脑都有）：位置编号要建在输入所在的设备上。"""
    seen, model = [], ns.GPTModel(config()).to("meta")
    model.pos_emb.register_forward_pre_hook(lambda _, given: seen.append(str(given[0].device)))
    return {"输出的设备": str(model(ids().to("meta")).device), "位置编号的设备": seen}


def gpt_order(ns):
    import torch

    model = build(ns.GPTModel, config())
    model(ids())
    changed = ids()
    changed[:, -1] = 0
    return {"改动最后一个词，前面的 logits 变了吗": not torch.allclose(model(ids())[:, :-1], model(changed)[:, :-1], atol=1e-6), "同样的词在不同位置，logits 相同吗": torch.allclose(model(torch.tensor([[3, 3]]))[0, 0], model(torch.tensor([[3, 3]]))[0, 1])}


# ── 4.7　generate_text_simple ──


class Counter:
    """一个假的模型：下一个词元 = 看到的词元数 + 最后一个词元，记下自己每次看到了什么。"""

    def __init__(self):
        self.seen, self.grad = [], []

    def __call__(self, idx):
        import torch

        self.seen.append(idx.tolist())
        self.grad.append(torch.is_grad_enabled())
        b, t = idx.shape
        logits = torch.zeros(b, t, 11)
        for row in range(b):
            for column in range(t):
                logits[row, column, (int(idx[row, column]) + column + 1) % 11] = 2.0
                logits[row, column, (int(idx[row, column]) + 5) % 11] -= 1.0
        return logits


def generate_fake(ns):
    import torch

    model = Counter()
    out = ns.generate_text_simple(model, torch.tensor([[1, 2, 3]]), 4, 6)
    return {"输出": out, "模型每次看到的": model.seen, "求梯度吗": model.grad}


def generate_short_context(ns):
    import torch

    model = Counter()
    out = ns.generate_text_simple(model, torch.tensor([[1, 2, 3, 4]]), 3, 2)
    return {"输出": out, "模型每次看到的": model.seen}


def generate_batch(ns):
    import torch

    return {"两句一起": ns.generate_text_simple(Counter(), torch.tensor([[1, 2], [7, 5]]), 3, 6), "一个词元开头": ns.generate_text_simple(Counter(), torch.tensor([[4]]), 2, 6)}


def generate_nothing(ns):
    import torch

    prompt = torch.tensor([[1, 2, 3]])
    return {"再生成 0 个": ns.generate_text_simple(Counter(), prompt, 0, 6), "提示词没有被改动": prompt}


def generate_real(ns):
    model = build(ns.GPTModel, config()).eval()
    out = ns.generate_text_simple(model, ids(2, 3), 6, 6)
    return {"输出": out}


DIM = "沿着批的方向归一化了。层归一化只看一个词元自己的 d 个数，dim 应为 -1；写成 0，批里换一个样本，别人的结果也跟着变。"

COMPONENTS = [
    dict(
        name="DummyTransformerBlock",
        title="占位的块",
        section="4.1",
        source="ch04/main/example_01_dummy_gpt.py",
        parts=["DummyTransformerBlock"],
        task="写一个 nn.Module：DummyTransformerBlock(cfg)，什么也不做，forward(x) 原样返回 x。它的用处是先把整条线跑通。",
        blanks=["super().__init__()", "return x"],
        cases=[("原样放行", dummy_block)],
        mutants=[
            ("return x", "return x.clone()", "返回了一份拷贝。占位的块什么也不用做，直接返回 x。"),
            ("return x", "return None", "忘了返回 x。没有 return 的函数返回 None，下一层就没有输入了。"),
            ("        super().__init__()\n", "        pass\n", "忘了 super().__init__()。nn.Module 要先初始化自己，才能登记和调用。"),
            ("super().__init__()", 'super().__init__()\n        self.layer = nn.Linear(cfg["emb_dim"], cfg["emb_dim"])', "多建了一个线性层。占位的块没有参数；多建一层，还会改变后面各层取到的随机数。"),
        ],
    ),
    dict(
        name="DummyLayerNorm",
        title="占位的归一化",
        section="4.1",
        source="ch04/main/example_01_dummy_gpt.py",
        parts=["DummyLayerNorm"],
        task="写一个 nn.Module：DummyLayerNorm(normalized_shape, eps=1e-5)，参数与 nn.LayerNorm 一样，但什么也不做，forward(x) 原样返回 x。",
        blanks=["super().__init__()", "return x"],
        cases=[("原样放行", dummy_norm)],
        mutants=[
            ("return x", "return x.clone()", "返回了一份拷贝。占位的归一化什么也不用做，直接返回 x。"),
            ("return x", "return x - x.mean(dim=-1, keepdim=True)", "已经在归一化了。这里只占位，真的归一化在 4.2 节。"),
            ("        super().__init__()\n", "        pass\n", "忘了 super().__init__()。nn.Module 要先初始化自己，才能登记和调用。"),
            ("super().__init__()", "super().__init__()\n        self.scale = nn.Parameter(torch.ones(normalized_shape))", "多建了参数。占位的归一化没有参数，状态字典里也不该有它的名字。"),
        ],
    ),
    dict(
        name="DummyGPTModel",
        title="GPT 的骨架",
        section="4.1",
        source="ch04/main/example_01_dummy_gpt.py",
        parts=["DummyGPTModel"],
        needs=["DummyTransformerBlock", "DummyLayerNorm"],
        task="写一个 nn.Module：DummyGPTModel(cfg)。依次建 tok_emb、pos_emb（nn.Embedding）、drop_emb（nn.Dropout）、trf_blocks（nn.Sequential，n_layers 个 DummyTransformerBlock）、"
        "final_norm（DummyLayerNorm）、out_head（nn.Linear，没有偏置）。forward(in_idx) 收 (b, t) 的编号：词嵌入加位置嵌入，dropout，过块，归一化，返回 logits (b, t, V)。",
        blanks=['nn.Embedding(cfg["context_length"], cfg["emb_dim"])', "DummyTransformerBlock(cfg) for _ in range", "bias=False", "device=in_idx.device", "tok_embeds + pos_embeds", "self.out_head(x)"],
        cases=[("数值", dummy_values), ("参数与结构", dummy_outline), ("dropout", dummy_dropout), ("设备", dummy_device)],
        mutants=[
            ("tok_embeds + pos_embeds", "tok_embeds", "忘了加位置嵌入。没有它，模型分不清一个词在第几个位置。"),
            ('cfg["emb_dim"], cfg["vocab_size"], bias=False', 'cfg["emb_dim"], cfg["vocab_size"]', "输出层多了偏置。GPT-2 的输出层没有偏置，bias 要写成 False。"),
            ("self.drop_emb(tok_embeds + pos_embeds)", "tok_embeds + pos_embeds", "忘了 drop_emb。训练时嵌入也要随机丢弃。"),
            (", device=in_idx.device", "", "位置编号没有建在输入所在的设备上。在 CPU 上看不出来，到了 GPU 上就报不在同一个设备。"),
            ("torch.arange(in_idx.shape[1], device", "torch.arange(1, in_idx.shape[1] + 1, device", "位置从 1 数起了。第一个位置是 0；从 1 数，序列正好 context_length 长时就超出了嵌入表。"),
            (
                '        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])\n        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])\n',
                '        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])\n        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])\n',
                "先建了 pos_emb，后建 tok_emb。公式没错，但各层依次从同一串随机数里取初值，次序变了，同一个种子就得不到书上的数。",
            ),
        ],
    ),
    dict(
        name="LayerNorm",
        title="层归一化",
        section="4.2",
        source="ch04/main",
        parts=["LayerNorm"],
        task="写一个 nn.Module：LayerNorm(emb_dim)。eps = 1e-5；两个参数 scale（初值全 1）和 shift（初值全 0），形状都是 (d,)。"
        "forward(x) 沿最后一维减均值、除以 √(方差 + eps)，再乘 scale 加 shift；方差除以 d，不是 d − 1。输入输出都是 (…, d)。",
        blanks=["nn.Parameter(torch.ones(emb_dim))", "nn.Parameter(torch.zeros(emb_dim))", "x.mean(dim=-1, keepdim=True)", "unbiased=False", "torch.sqrt(var + self.eps)", "self.scale * norm_x + self.shift"],
        cases=[("数值", norm_values), ("与 torch 自带的比", norm_truth), ("方差很小", norm_small), ("各种形状", norm_shapes), ("梯度", norm_gradients), ("参数", norm_outline)],
        mutants=[
            ("unbiased=False", "unbiased=True", "方差除以了 d − 1。var 默认是无偏的；GPT-2 除以 d，要写 unbiased=False。"),
            ("torch.sqrt(var + self.eps)", "(torch.sqrt(var) + self.eps)", "eps 加在了根号外面。要先加 eps 再开方，方差很小时两者差很多。"),
            ("torch.sqrt(var + self.eps)", "torch.sqrt(var)", "忘了加 eps。方差是 0 时就成了 0 / 0，得到 nan。"),
            ("torch.sqrt(var + self.eps)", "(var + self.eps)", "忘了开方。要除以标准差，不是方差。"),
            ("self.scale * norm_x + self.shift", "norm_x", "忘了缩放和平移。scale 和 shift 没有用上，也就学不到东西。"),
            ("x.mean(dim=-1, keepdim=True)", "x.mean(dim=-1)", "求均值时忘了 keepdim=True。少了一维就按列广播：行数等于列数时不报错，却减错了数。"),
            ("x.mean(dim=-1, keepdim=True)", "x.mean(dim=0, keepdim=True)", DIM),
            ("1e-5", "1e-6", "eps 不是 1e-5。平时看不出来，方差很小时结果就不同。"),
            ("nn.Parameter(torch.ones(emb_dim))", "torch.ones(emb_dim)", "scale 没有包成 nn.Parameter。普通张量不会登记，训练时不更新，也不会存进状态字典。"),
            ("nn.Parameter(torch.zeros(emb_dim))", "nn.Parameter(torch.ones(emb_dim))", "shift 的初值写成了 1。初值应为 0，刚建好的归一化不平移。"),
        ],
    ),
    dict(
        name="GELU",
        title="GELU 激活函数",
        section="4.3",
        source="ch04/main",
        parts=["GELU"],
        task="写一个 nn.Module：GELU()，没有参数。forward(x) 逐个数计算 GPT-2 用的近似公式：0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))，返回与 x 同形的张量。",
        blanks=["0.5 * x", "torch.tanh", "(2 / torch.pi) ** 0.5", "0.044715 * x**3"],
        cases=[("数值", gelu_values), ("与 torch 自带的比", gelu_truth), ("放大看", gelu_digits), ("梯度", gelu_gradients), ("形状", gelu_shape)],
        mutants=[
            ("(2 / torch.pi) ** 0.5", "(2 / torch.pi)", "忘了开方。系数是 √(2/π)，约 0.798，不是 2/π。"),
            ("x**3", "x**2", "x 的三次方写成了平方。平方丢了正负号，负半边就错了。"),
            ("0.044715", "0.44715", "系数的小数点错了一位。应为 0.044715。"),
            ("1 + torch.tanh", "torch.tanh", "括号里忘了加 1。少了它，x 是负数时输出反而是正的。"),
            ("0.5 * x", "x", "忘了乘 0.5。x 很大时输出应接近 x，不是 2x。"),
            ("torch.tanh", "torch.sigmoid", "tanh 写成了 sigmoid。tanh 在 −1 到 1 之间，加 1 再乘 0.5 才是 0 到 1。"),
            (
                "0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))",
                "0.5 * x * (1 + torch.erf(x / 2**0.5))",
                "用了精确的 GELU。公式没错，但 GPT-2 的权重是用 tanh 近似版训练的，要一致就得用近似版。",
            ),
        ],
    ),
    dict(
        name="FeedForward",
        title="前馈网络",
        section="4.3",
        source="ch04/main",
        parts=["FeedForward"],
        needs=["GELU"],
        task="写一个 nn.Module：FeedForward(cfg)，用到 cfg 的 emb_dim（d）。layers 是一个 nn.Sequential：nn.Linear(d, 4d)、GELU()、nn.Linear(4d, d)。forward(x) 收 (b, t, d)，返回 (b, t, d)。",
        blanks=['nn.Linear(cfg["emb_dim"], 4 * cfg["emb_dim"])', "GELU()", 'nn.Linear(4 * cfg["emb_dim"], cfg["emb_dim"])', "self.layers(x)"],
        cases=[("数值", ff_values), ("逐个词元", ff_alone), ("参数", ff_outline), ("梯度", ff_gradients)],
        mutants=[
            ("GELU(),", "", "两个线性层之间没有激活函数。这样两层合起来只等于一个线性层，叠多少层都白叠。"),
            ("GELU(),", "nn.ReLU(),", "激活函数用成了 ReLU。GPT-2 用 GELU；ReLU 把负数全变成 0。"),
            ("GELU(),", "nn.GELU(),", "用了 torch 自带的 nn.GELU()。它默认是精确版，与 GPT-2 的 tanh 近似版差万分之几。"),
            ('nn.Linear(4 * cfg["emb_dim"], cfg["emb_dim"]),', 'nn.Linear(4 * cfg["emb_dim"], cfg["emb_dim"]),\n            GELU(),', "降维之后又过了一次 GELU。最后一层不加激活函数，否则输出的负数几乎都被压成 0。"),
            (
                'nn.Linear(4 * cfg["emb_dim"], cfg["emb_dim"]),',
                'nn.Linear(4 * cfg["emb_dim"], cfg["emb_dim"]),\n            nn.Dropout(cfg["drop_rate"]),',
                "末尾多了一个 dropout。块在加残差之前已经丢弃过一次，这里再丢就丢了两次；不报错，参数和评估模式的输出也都不变，要数层数才看得出来。",
            ),
            ('nn.Linear(4 * cfg["emb_dim"], cfg["emb_dim"])', 'nn.Linear(4 * cfg["emb_dim"], cfg["emb_dim"], bias=False)', "降维的线性层少了偏置。nn.Linear 默认带偏置，GPT-2 的这两层都带。"),
            ("return self.layers(x)", "return x + self.layers(x)", "在前馈网络里就加了残差。残差由 TransformerBlock 来加，这里加了就加了两遍。"),
        ],
    ),
    dict(
        name="ExampleDeepNeuralNetwork",
        title="残差连接的例子",
        section="4.4",
        source="ch04/main/example_04_shortcut.py",
        parts=["ExampleDeepNeuralNetwork"],
        needs=["GELU"],
        task="写一个 nn.Module：ExampleDeepNeuralNetwork(layer_sizes, use_shortcut)。layers 是 nn.ModuleList，每层是 nn.Sequential(nn.Linear(前一个宽度, 后一个宽度), GELU())。"
        "forward(x) 逐层计算；use_shortcut 为真而且输出与输入形状相同时，把输入加到输出上。",
        blanks=["zip(layer_sizes, layer_sizes[1:])", "nn.ModuleList", "nn.Sequential(nn.Linear(d_in, d_out), GELU())", "x.shape == layer_output.shape", "x + layer_output"],
        cases=[("数值", deep_values), ("参数", deep_outline), ("梯度", deep_gradients), ("一个样本", deep_one_row)],
        mutants=[
            ("x = x + layer_output", "x = layer_output", "没有加残差。use_shortcut 为真时，每层的输入要加到输出上。"),
            ("self.use_shortcut and x.shape == layer_output.shape", "x.shape == layer_output.shape", "没有看 use_shortcut。不要残差的时候也加上了。"),
            ("self.use_shortcut and x.shape == layer_output.shape", "self.use_shortcut", "没有比较形状就相加。最后一层 3 → 1，加起来要么报错，要么被广播成别的形状。"),
            ("nn.Sequential(nn.Linear(d_in, d_out), GELU())", "nn.Sequential(nn.Linear(d_in, d_out))", "每层忘了激活函数。没有它，叠多少层都只等于一层。"),
            ("x = x + layer_output", "x = x * layer_output", "残差用成了乘。要加：加法让梯度原样传回去，乘法还是会打折。"),
            ("nn.Sequential(nn.Linear(d_in, d_out), GELU())", "nn.Sequential(GELU(), nn.Linear(d_in, d_out))", "先激活再线性，次序反了。每层是先 Linear 再 GELU。"),
            ("layer_output = layer(x)", "layer_output = layer(x.detach())", "输入被 detach 了。梯度只剩残差那条路，传不进前面各层的线性层里。"),
        ],
    ),
    dict(
        name="print_gradients",
        title="打印梯度",
        section="4.4",
        source="ch04/main/example_04_shortcut.py",
        parts=["print_gradients"],
        needs=["ExampleDeepNeuralNetwork"],
        task="写一个函数：print_gradients(model, x)。前向一次，以 [[0.0]] 为目标算均方误差，反向；对名字里带 weight 的每个参数，打印名字和梯度绝对值的平均。返回这些平均值的列表，从第一层到最后一层。",
        blanks=["nn.MSELoss()(output, target)", "loss.backward()", "model.named_parameters()", '"weight" in name', "param.grad.abs().mean().item()"],
        cases=[("没有残差", gradients_without), ("有残差", gradients_with), ("连着两次", gradients_twice)],
        mutants=[
            ("param.grad.abs().mean().item()", "param.grad.mean().item()", "忘了取绝对值。正负抵消，平均值看不出梯度有多大。"),
            ("param.grad.abs().mean().item()", "param.abs().mean().item()", "平均的是参数本身，不是它的梯度。要看 param.grad。"),
            ("param.grad.abs().mean().item()", "param.grad.abs().sum().item()", "求了和而不是平均。层的大小不同，和就没法比。"),
            ("param.grad.abs().mean().item()", "param.grad.abs().mean()", "列表里是张量，不是数。取 .item() 才是 Python 的小数。"),
            ('if "weight" in name:', 'if "bias" in name:', "看的是偏置，不是权重。书上打印的是每层权重的梯度。"),
            ('if "weight" in name:', "if True:", "偏置也算进去了。只要名字里带 weight 的参数。"),
            ("loss.backward()", "output.sum().backward()", "从输出开始反向，不是从损失。少乘了损失对输出的那一段。"),
        ],
    ),
    dict(
        name="TransformerBlock",
        title="Transformer 块",
        section="4.5",
        source="ch04/main",
        parts=["TransformerBlock"],
        needs=["MultiHeadAttention", "LayerNorm", "FeedForward"],
        task="写一个 nn.Module：TransformerBlock(cfg)。依次建 att（MultiHeadAttention，d_in 和 d_out 都是 emb_dim）、ff（FeedForward）、norm1、norm2（LayerNorm）、drop_shortcut（nn.Dropout）。"
        "forward(x)：x 加上 drop_shortcut(att(norm1(x)))，再加上 drop_shortcut(ff(norm2(·)))。输入输出都是 (b, t, d)。",
        blanks=['context_length=cfg["context_length"]', 'LayerNorm(cfg["emb_dim"])', "self.att(x)", "self.ff(x)", "self.drop_shortcut(x)", "x + shortcut"],
        cases=[("数值", block_values), ("各种长度", block_shapes), ("参数的名字", block_outline), ("梯度", block_gradients), ("dropout", block_dropout), ("输入很大", block_big), ("两个归一化", block_two_norms), ("不改输入", block_keeps_input)],
        mutants=[
            ("        x = self.drop_shortcut(x)\n        x = x + shortcut\n", "        x = self.drop_shortcut(x)\n", "注意力之后忘了加残差。没有这条路，深了就训不动。"),
            ("return x + shortcut", "return x", "前馈网络之后忘了加残差。没有这条路，深了就训不动。"),
            ("        shortcut = x\n        x = self.norm1(x)\n", "        x = self.norm1(x)\n        shortcut = x\n", "残差加的是归一化之后的 x。shortcut 要在 norm1 之前留下，主路上不能有归一化。"),
            (
                "        x = x + shortcut\n\n        # ② 前馈网络：每个词元各自消化。\n        shortcut = x\n",
                "        x = x + shortcut\n\n        # ② 前馈网络：每个词元各自消化。\n",
                "第二次残差加的还是块的输入。shortcut 要在注意力之后重新留一份。",
            ),
            ("        x = self.norm1(x)\n        x = self.att(x)  # (b, t, d)\n", "        x = self.att(x)  # (b, t, d)\n        x = self.norm1(x)\n", "先注意力后归一化，成了 Post-LN。GPT-2 是先归一化（Pre-LN）。"),
            ("self.norm2(x)", "self.norm1(x)", "第二次归一化用的还是 norm1。两处各有自己的 scale 和 shift，不能共用。"),
            ("        x = self.norm2(x)\n", "", "前馈网络之前忘了 norm2。输入一大，前馈的输出也跟着大。"),
            ('qkv_bias=cfg["qkv_bias"],', "", "没有把 qkv_bias 传给注意力。加载 GPT-2 的权重时会少三个偏置。"),
            ("        x = self.att(x)  # (b, t, d)\n        x = self.drop_shortcut(x)\n", "        x = self.att(x)  # (b, t, d)\n", "注意力之后忘了 dropout。训练时少丢弃了一处。"),
        ],
    ),
    dict(
        name="GPTModel",
        title="GPT 模型",
        section="4.6",
        source="ch04/main",
        parts=["GPTModel"],
        needs=["TransformerBlock", "LayerNorm"],
        task="写一个 nn.Module：GPTModel(cfg)。依次建 tok_emb、pos_emb、drop_emb、trf_blocks（nn.Sequential，n_layers 个 TransformerBlock）、final_norm（LayerNorm）、out_head（没有偏置）。"
        "forward(in_idx) 收 (b, t)：比 context_length 长就抛 ValueError；词嵌入加位置嵌入，dropout，过块，归一化，返回 logits (b, t, V)。",
        blanks=['nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])', "TransformerBlock(cfg) for _ in range", "bias=False", "torch.arange(t, device=in_idx.device)", "tok_embeds + pos_embeds", "self.trf_blocks(x)", "self.final_norm(x)"],
        cases=[("数值", gpt_values), ("层数", gpt_layers), ("参数", gpt_outline), ("梯度", gpt_gradients), ("dropout", gpt_dropout), ("太长就拒绝", gpt_too_long), ("设备", gpt_device), ("位置与掩码", gpt_order)],
        mutants=[
            ("tok_embeds + pos_embeds", "tok_embeds", "忘了加位置嵌入。没有它，模型分不清一个词在第几个位置。"),
            ("        x = self.final_norm(x)\n", "", "忘了 final_norm。最后一块的输出没有归一化就进了输出层。"),
            ("        x = self.drop_emb(x)\n", "", "忘了 drop_emb。训练时嵌入也要随机丢弃。"),
            ('cfg["emb_dim"], cfg["vocab_size"], bias=False', 'cfg["emb_dim"], cfg["vocab_size"]', "输出层多了偏置。GPT-2 的输出层没有偏置，bias 要写成 False。"),
            (", device=in_idx.device", "", "位置编号没有建在输入所在的设备上。在 CPU 上看不出来，到了 GPU 上就报不在同一个设备。"),
            ("nn.Sequential(*[TransformerBlock(cfg) for _ in range(cfg[\"n_layers\"])])", "nn.Sequential(*[TransformerBlock(cfg)] * cfg[\"n_layers\"])", "每一块是同一个对象。列表乘法只是重复引用，12 块共用一份权重。"),
            (
                '        self.final_norm = LayerNorm(cfg["emb_dim"])\n',
                '        self.final_norm = nn.LayerNorm(cfg["emb_dim"])\n',
                "final_norm 用了 torch 自带的 nn.LayerNorm。算法相同，但参数名是 weight、bias，不是 scale、shift，存下的权重读不进来。",
            ),
            ("if t > self.pos_emb.num_embeddings:", "if False:", "序列太长时没有拒绝。位置嵌入只有 context_length 行，再长就会报一句看不懂的 index out of range。"),
            ("if t > self", "if t >= self", "正好 context_length 长时也拒绝了。位置编号是 0 到 context_length − 1，正好放得下。"),
        ],
    ),
    dict(
        name="generate_text_simple",
        title="贪心生成",
        section="4.7",
        source="ch04/main",
        parts=["generate_text_simple"],
        needs=["GPTModel"],
        task="写一个函数：generate_text_simple(model, idx, max_new_tokens, context_size)。循环 max_new_tokens 次：只留最近的 context_size 个词元，不求梯度地问模型，取最后一个位置的 logits，选分数最大的词元，接到 idx 后面。返回 (b, t + max_new_tokens)。",
        blanks=["idx[:, -context_size:]", "torch.no_grad()", "logits[:, -1, :]", "torch.argmax(logits, dim=-1, keepdim=True)", "torch.cat((idx, idx_next), dim=1)"],
        cases=[("假的模型", generate_fake), ("上下文很短", generate_short_context), ("一批", generate_batch), ("生成 0 个", generate_nothing), ("真的模型", generate_real)],
        mutants=[
            ("logits[:, -1, :]", "logits[:, 0, :]", "取的是第一个位置的 logits。新的词元要看最后一个位置，前面那些位置的下一个早就知道了。"),
            ("idx[:, -context_size:]", "idx[:, :context_size]", "留下的是最前面的 context_size 个。序列一长，模型就再也看不到新生成的词元。"),
            ("idx[:, -context_size:]", "idx", "没有截取最近的 context_size 个。序列超过上下文长度时，位置嵌入就不够用了。"),
            ("torch.argmax(logits, dim=-1, keepdim=True)", "torch.argmin(logits, dim=-1, keepdim=True)", "选了分数最小的词元。应该用 argmax。"),
            ("with torch.no_grad():", "with torch.enable_grad():", "没有关掉求梯度。结果不变，但每一步都记着计算图，又慢又占内存。"),
            ("torch.cat((idx, idx_next), dim=1)", "torch.cat((idx_next, idx), dim=1)", "新词元接到了前面。应该接在后面。"),
            ("torch.cat((idx, idx_next), dim=1)", "torch.cat((idx_cond, idx_next), dim=1)", "接在了截短的 idx_cond 后面。上下文装不下时，前面的提示词就丢了。"),
            ("    return idx", "    return idx_next", "只返回了最后一个新词元。应该返回提示词连同全部新词元。"),
        ],
    ),
]
