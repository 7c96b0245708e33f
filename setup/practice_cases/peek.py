"""加词元、看里面、推一把的组件：extend_tokenizer、grow、logit lens、头的打分、引导向量

怎么写一项，见 setup/practice.md「加一个组件」。这里不在顶层导入 torch、tiktoken：列清单要立刻。
"""


def inputs(*shape, seed=1):
    """一份固定的输入。"""
    import torch

    torch.manual_seed(seed)
    return torch.randn(*shape)


# ── extend_tokenizer ──


def small_tokenizer(moved=()):
    """字节加四次合并；moved 里的字节排在 261 以后，像 SmolLM2 缺的那 21 个。"""
    import tiktoken

    ranks = {bytes([byte]): byte for byte in range(256)} | {b"ab": 256, b"abc": 257, b" a": 258, b"cd": 259}
    ranks |= {byte: 261 + 2 * i for i, byte in enumerate(moved)}
    return tiktoken.Encoding("small", pat_str=r" ?\p{L}+|\s+|[^\s\p{L}]+", mergeable_ranks=ranks, special_tokens={"<|end|>": 260})


NEW = ["<|en|>", "<|zh|>", "<|fr|>"]


def tokenizer_values(ns):
    base = small_tokenizer()
    new = ns.extend_tokenizer(base, NEW)
    text = "abcd<|zh|> abc<|end|><|en|>中<|fr|>"
    return {
        "编号": new.encode(text, allowed_special="all"),
        "旧文字照旧": new.encode_ordinary(text) == base.encode_ordinary(text),
        "解回来": [new.decode([261 + i]) for i in range(3)],
        "原来的没有改": sorted(base._special_tokens),
        "只加一个": ns.extend_tokenizer(base, ["<|x|>"]).encode("<|x|>a", allowed_special="all"),
    }


def tokenizer_beyond(ns):
    """有两个字节排在模型的行数之外，给了 start。"""
    base = small_tokenizer([b"\xff", b"\x04"])
    new = ns.extend_tokenizer(base, NEW, start=261)
    return {
        "编号": new.encode("a<|en|><|zh|><|fr|>", allowed_special="all"),
        "解回来": [new.decode([261 + i]) for i in range(3)],
        "挪走的字节": new.encode_ordinary("\x04"),
        "字节也解得回来": new.decode_bytes(new.encode_ordinary("\x04a")).hex(),
        "不给 start": ns.extend_tokenizer(base, ["<|x|>"]).encode("<|x|>", allowed_special="all"),
    }


def refuses(names):
    """应当 ValueError 的一个用例。"""
    return lambda ns: {"拒绝": ns.extend_tokenizer(small_tokenizer(), names)}


# ── grow ──


def table_model(tied, cfg=True):
    """只有词嵌入和输出层的模型；两张表的平均、散开多少都不同。"""
    import torch

    class Model(torch.nn.Module):
        """词嵌入 → 输出层。"""

        def __init__(self):
            super().__init__()
            if cfg:
                self.cfg = {"vocab_size": 12, "emb_dim": 5}
            torch.manual_seed(4)
            self.tok_emb, self.out_head = torch.nn.Embedding(12, 5), torch.nn.Linear(5, 12, bias=False)
            with torch.no_grad():
                self.tok_emb.weight.mul_(2).add_(0.5)
            if tied:
                self.out_head.weight = self.tok_emb.weight

        def forward(self, ids):
            return self.out_head(torch.tanh(self.tok_emb(ids)))

    return Model()


def grown(ns, tied, count=3, init="mean", **named):
    import torch

    model = table_model(tied, **named)
    torch.manual_seed(9)
    ns.grow(model, count, init)
    return model


def grow_values(ns):
    import torch

    ids = torch.arange(12)[None]
    return {f"{'共用' if tied else '两张'}，{init}": [m.tok_emb.weight, m.out_head.weight, m(ids)] for tied in (True, False) for init in ("mean", "random", 0.02) for m in [grown(ns, tied, init=init)]}


def grow_tied(ns):
    return {f"原来共用是 {tied}": [m.out_head.weight is m.tok_emb.weight, sum(p.numel() for p in m.parameters())] for tied in (True, False) for m in [grown(ns, tied)]}


def grow_records(ns):
    m = grown(ns, True)
    return {"记着的行数": [m.tok_emb.num_embeddings, m.out_head.out_features, m.cfg["vocab_size"], m.cfg["emb_dim"]], "没有 cfg 的也行": len(grown(ns, False, cfg=False).tok_emb.weight), "是参数": [n for n, p in m.named_parameters() if p.requires_grad]}


def grow_gradient(ns):
    import torch

    m = grown(ns, True)
    torch.nn.functional.cross_entropy(m(torch.tensor([12, 3])), torch.tensor([1, 14])).backward()
    return {"新的行也有梯度": m.tok_emb.weight.grad}


def grow_refuses(ns):
    return {"加 0 行": ns.grow(table_model(True), 0)}


def grow_refuses_init(ns):
    return {"不认识的 init": ns.grow(table_model(True), 1, "average")}


# ── residuals、lens、steered：一个三块的小模型 ──


def block_model():
    """三个块，归一化里有不同的缩放。"""
    import torch

    class Norm(torch.nn.Module):
        """除以均方根，再乘各不相同的缩放。"""

        def forward(self, x):
            return torch.linspace(0.5, 2.0, 6) * x / (x.pow(2).mean(dim=-1, keepdim=True) + 1e-5).sqrt()

    class Block(torch.nn.Module):
        """残差。"""

        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(6, 6)

        def forward(self, x):
            return x + 3 * torch.tanh(self.layer(x.cumsum(dim=1)))

    class Model(torch.nn.Module):
        """词嵌入 → 块 → 归一化 → 输出层。"""

        def __init__(self):
            super().__init__()
            torch.manual_seed(2)
            self.tok_emb, self.trf_blocks = torch.nn.Embedding(9, 6), torch.nn.ModuleList([Block() for _ in range(3)])
            self.final_norm, self.out_head = Norm(), torch.nn.Linear(6, 9, bias=False)

        def forward(self, ids):
            x = self.tok_emb(ids)
            for block in self.trf_blocks:
                x = block(x)
            return self.out_head(self.final_norm(x))

    return Model()


def ids():
    import torch

    return torch.tensor([[1, 5, 3, 8]])


def hooks_left(model):
    return sum(len(module._forward_hooks) for module in model.modules())


def lens_values(ns):
    import torch

    model = block_model()
    stream = ns.residuals(model, ids())
    probs = ns.lens(model, stream)
    return {"主路上的向量": stream, "各层的概率": probs, "最后一层就是输出": bool(torch.allclose(probs[-1], torch.softmax(model(ids())[0], dim=-1), atol=1e-6)), "不留梯度": [stream.requires_grad, probs.requires_grad]}


def lens_cleans(ns):
    import torch

    model = block_model()
    ns.residuals(model, ids())
    left = [hooks_left(model)]
    model.trf_blocks[1].layer = torch.nn.Linear(7, 7)  # 算到一半会报错
    try:
        ns.residuals(model, ids())
    except RuntimeError:
        left.append(hooks_left(model))
    return {"留下几个钩子：算完、报错": left}


def steered_values(ns):
    model, vector, result = block_model(), inputs(6), {}
    for layer in (1, 2, 3):
        with ns.steered(model, layer, vector):
            result[f"第 {layer} 个块之后"] = model(ids())
    with ns.steered(model, 2, 0 * vector):
        result["强度 0"] = model(ids())
    with ns.steered(model, 2, inputs(2, 1, 6)):
        result["两句各加各的"] = model(ids().expand(2, -1))
    with ns.steered(model, 1, vector), ns.steered(model, 3, -vector):
        result["推两层"] = model(ids())
    return result


def steered_restores(ns):
    model = block_model()
    with ns.steered(model, 2, inputs(6)):
        inside = hooks_left(model)
    try:
        with ns.steered(model, 2, inputs(6)):
            raise KeyError
    except KeyError:
        pass
    return {"里面、出来": [inside, hooks_left(model)], "恢复了": model(ids())}


def steered_refuses(ns):
    with ns.steered(block_model(), 0, inputs(6)):
        return {"第 0 层": None}


def steered_refuses_more(ns):
    with ns.steered(block_model(), 4, inputs(6)):
        return {"第 4 层": None}


# ── head_scores ──


def scores_values(ns):
    import torch

    weights = torch.softmax((3 * inputs(2, 2, 3, 8, 8)).masked_fill(torch.ones(8, 8, dtype=torch.bool).triu(1), -torch.inf), dim=-1)
    return {"随机的": ns.head_scores(weights), "长一点": ns.head_scores(torch.softmax(inputs(1, 1, 2, 14, 14), dim=-1))}


def scores_pure(ns):
    """三个只看一处的头：谁是谁，分得清。"""
    import torch

    weights = torch.zeros(1, 1, 3, 12, 12)
    for i in range(12):
        weights[0, 0, 0, i, max(i - 1, 0)] = weights[0, 0, 1, i, 0] = weights[0, 0, 2, i, i - 5 if i >= 6 else i] = 1
    return ns.head_scores(weights)


COMPONENTS = [
    dict(
        name="extend_tokenizer",
        title="给分词器加特殊词元",
        section="实验",
        source="ch05/experiments/exp_extend_tokenizer.py",
        parts=["extend_tokenizer"],
        task="写函数 extend_tokenizer(tokenizer, names, start=None)，返回一个新的 tiktoken.Encoding，原来的不改：names 里的名字依次是编号 start、start + 1……的特殊词元（start 没给就是 n_vocab）；"
        "_mergeable_ranks 里编号不小于 start 的（不是模型的词元）都往后挪 len(names) 个，_pat_str 和原来的 _special_tokens 照旧。没有名字、名字是空的、已经是词元或写了两遍、一个名字是另一个的开头，都是 ValueError。",
        blanks=["tokenizer.n_vocab if start is None else start", "i + len(names) if i >= start else i", "special | {name: start + i for i, name in enumerate(names)}", "other.startswith(name) or name.startswith(other)"],
        cases=[
            ("编号", tokenizer_values), ("模型之外的字节", tokenizer_beyond), ("拒绝空的", refuses([])), ("拒绝空名字", refuses(["<|a|>", ""])), ("拒绝已有的", refuses(["<|end|>"])),
            ("拒绝两遍", refuses(["<|a|>", "<|a|>"])), ("拒绝开头相同：先短", refuses(["<N_1", "<N_10"])), ("拒绝开头相同：先长", refuses(["<N_10", "<N_1"])),
        ],
        mutants=[
            ("i + len(names) if i >= start else i", "i", "没有让出位置。词表外的字节与新词元撞了号，解码出来是字节。"),
            ("i + len(names) if i >= start else i", "i + len(names)", "旧的编号全挪了。词嵌入的行还是老次序，每个词元都认错。"),
            ("start + i for i, name", "start + 1 + i for i, name", "编号多了 1。模型只长了 c 行，最后一个就越界。"),
            ("tokenizer.n_vocab if start is None else start", "tokenizer.n_vocab", "没有用 start。分词器比模型大的时候，中间空着一段，新的编号越界。"),
            ("special | {name: start + i for i, name in enumerate(names)}", "{name: start + i for i, name in enumerate(names)}", "丢了原来的特殊词元。结束词元也切不出来了。"),
            ("others = [*special, *names[:place]]", "others = [*special]", "没有看同一批里前面的名字。写了两遍的，后一个顶掉前一个，少一个词元。"),
            ("other.startswith(name) or name.startswith(other)", "other.startswith(name)", "开头只比了一个方向。先加短的、后加长的，长的就切不出来。"),
        ],
    ),
    dict(
        name="grow",
        title="词嵌入和输出层长出新的行",
        section="实验",
        source="ch05/experiments/exp_extend_tokenizer.py",
        parts=["new_rows", "grow"],
        task="写两个函数。new_rows(weight, count, init)：weight 是 (V, d)，返回 (count, d)；init 是 \"mean\" 时每行都是旧的行的平均，是一个数时是那么大标准差的正态分布，是 \"random\" 时标准差取整张旧表的（torch.randn 乘标准差），别的 ValueError。"
        "grow(model, count, init=\"mean\")：给 model.tok_emb 和 model.out_head 的 weight 各在末尾接上 count 行（各用各的 new_rows，先词嵌入后输出层），旧的行不变，是 nn.Parameter；原来共用一个 weight 的，只长一次，仍然共用；"
        "num_embeddings、out_features 改成新的行数，模型有 cfg 时，换成 vocab_size 也改了的新字典；count 小于 1 是 ValueError。不留梯度。",
        blanks=["model.out_head.weight is model.tok_emb.weight", "weight.mean(dim=0).repeat(count, 1)", "torch.cat([layer.weight, new_rows(layer.weight, count, init)])", "layer.weight = model.tok_emb.weight"],
        cases=[("数值", grow_values), ("共用", grow_tied), ("记录", grow_records), ("梯度", grow_gradient), ("拒绝 0 行", grow_refuses), ("拒绝不认识的", grow_refuses_init)],
        mutants=[
            ("if tied and layer is model.out_head:", "if False:", "共用的两张表各长各的。一处也不报错，参数多出一倍，训练时各改各的。"),
            ("for layer in (model.tok_emb, model.out_head):", "for layer in (model.tok_emb,):", "忘了输出层。logits 还是 V 个，新词元永远写不出来。"),
            ("torch.cat([layer.weight, new_rows(layer.weight, count, init)])", "torch.cat([new_rows(layer.weight, count, init), layer.weight])", "新的行接到了前面。旧词元的编号全错开了。"),
            ("new_rows(layer.weight, count, init)", "new_rows(model.tok_emb.weight, count, init)", "输出层用了词嵌入的行来算。不共用的时候，两张表的平均不是一回事，新词元的 logit 就不是平均的。"),
            ("weight.mean(dim=0)", "weight.mean(dim=1)[: weight.shape[1]]", "对错了维。要把 V 行平均成一行，不是把每一行平均成一个数。"),
            ("(weight.std() if init == \"random\" else init)", "weight.std()", "没有用给的标准差。"),
            ("if hasattr(model, \"cfg\"):", "if False:", "配置没有跟上。存了再装，就说形状不同。"),
        ],
    ),
    dict(
        name="logit_lens",
        title="logit lens",
        section="实验",
        source="ch05/experiments/exp_steering_peek.py",
        parts=["residuals", "lens"],
        task="写两个函数，都不留梯度。residuals(model, ids)：ids 是 (1, t)，用前向钩子接住 model.tok_emb 和每个 model.trf_blocks 的输出，返回 (n, t, d)，第 0 行是嵌入；算完或中途报错，钩子都撤走。"
        "lens(model, stream)：把每一层的向量送进 model.final_norm 和 model.out_head，再 softmax，返回 (n, t, V)。",
        blanks=["stream.append(output[0])", "model.out_head(model.final_norm(x[None]))", "torch.softmax(torch.cat(seen), dim=-1)"],
        cases=[("数值", lens_values), ("钩子", lens_cleans)],
        mutants=[
            ("model.out_head(model.final_norm(x[None]))", "model.out_head(x[None])", "漏了 final_norm。最后一层也不再是模型的输出。"),
            ("torch.softmax(torch.cat(seen), dim=-1)", "torch.softmax(torch.cat(seen), dim=1)", "softmax 对错了维。每个位置各有一个分布，要对词表求。"),
            ("hooks = [model.tok_emb.register_forward_hook(lambda _module, _inputs, output: stream.append(output[0]))]", "hooks = []", "没有接嵌入。第 0 行就成了第一个块之后，层号全错一位。"),
            ("for hook in hooks:\n            hook.remove()", "pass", "钩子没有撤走。以后每次前向都多存一份，内存越用越多。"),
            ("return torch.stack(stream)", "return torch.stack(stream[::-1])", "次序反了。第 0 行应当是嵌入。"),
        ],
    ),
    dict(
        name="steered",
        title="引导向量",
        section="实验",
        source="ch05/experiments/exp_steering_peek.py",
        parts=["steered"],
        task="写一个上下文管理器（contextlib.contextmanager）steered(model, layer, vector)：with 里面，model.trf_blocks 的第 layer 个（从 1 数）的输出，每个位置都加上 vector；出了 with，包括中途报错，都恢复原样。没有第 layer 个块时 ValueError。",
        blanks=["model.trf_blocks[layer - 1]", "output + vector", "hook.remove()"],
        cases=[("数值", steered_values), ("恢复", steered_restores), ("拒绝第 0 层", steered_refuses), ("拒绝没有的层", steered_refuses_more)],
        mutants=[
            ("model.trf_blocks[layer - 1]", "model.trf_blocks[layer % len(model.trf_blocks)]", "层号错了一位。从 1 数的第 layer 个，下标是 layer − 1。"),
            ("output + vector", "output * 0 + vector", "顶替了原来的输出。引导是加上去，不是换掉。"),
            ("lambda _module, _inputs, output: output + vector", "lambda _module, _inputs, output: output.__setitem__((slice(None), -1), output[:, -1] + vector) and None", "只加在最后一个位置。写下去的每一步，前面的也要推。"),
            ("    try:\n        yield\n    finally:\n        hook.remove()", "    yield\n    hook.remove()", "报错的时候钩子留下了。不放在 finally 里，以后每一句都被推。"),
            ("        hook.remove()", "        pass", "钩子没有撤走。出了 with 还在推。"),
            ("not 1 <= layer <= len(model.trf_blocks)", "layer > len(model.trf_blocks)", "没有拒绝第 0 层。下标成了 −1，推的是最后一层，不报错。"),
        ],
    ),
    dict(
        name="head_scores",
        title="给头打分",
        section="实验",
        source="ch05/experiments/exp_steering_peek.py",
        parts=["head_scores"],
        task="写函数 head_scores(weights)：weights 是 (n, b, h, t, t) 的注意力权重，后一半词元与前一半相同。返回一个字典，三项都是 (n, b, h)："
        "\"看前一个\"：第 1 行起，每行给前一个位置多少，取平均；\"看第一个\"：第 1 行起，给位置 0 多少；\"看上次的后一个\"：后一半的每个 i，给 i − t/2 + 1 多少（归纳头）。",
        blanks=["weights[..., rows, rows - 1].mean(dim=-1)", "weights[..., 1:, 0].mean(dim=-1)", "weights[..., second, second - half + 1].mean(dim=-1)"],
        cases=[("数值", scores_values), ("只看一处的头", scores_pure)],
        mutants=[
            ("second - half + 1", "second - half", "看的是上次的自己。归纳头要看它后面的那一个，抄来就是答案。"),
            ("weights[..., rows, rows - 1]", "weights[..., rows - 1, rows]", "行和列反了。行是谁在看，列是看谁；反过来是未来，全是 0。"),
            ("weights[..., 1:, 0]", "weights[..., :, 0]", "第 0 行也算了。它只看得见自己，白送一分。"),
            ("torch.arange(half, t)", "torch.arange(1, t)", "前一半也算了。那里还没有\"上次\"，下标成了负的，数到了末尾去。"),
            ("weights[..., second, second - half + 1].mean(dim=-1)", "weights[..., second, :].mean(dim=(-1, -2))", "平均了整行。每行加起来是 1，这样每个头得分都一样。"),
        ],
    ),
]  # fmt: skip
