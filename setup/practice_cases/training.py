"""训练的组件：预热加余弦、梯度裁剪、梯度累积、激活值重算、一层一层地装权重、背下了多少、滑动窗口的困惑度

怎么写一项，见 setup/practice.md「加一个组件」。这里不在顶层导入 torch：列清单要立刻。
"""


def refuses(call):
    """应当 ValueError 的一个用例。"""
    return lambda ns: {"拒绝": call(ns)}


# ── learning_rate ──


def rate_values(ns):
    return {
        "书上的 135 步": [ns.learning_rate(step, 135, 27, 0.01, 1e-4, 1e-5) for step in (0, 1, 13, 26, 27, 28, 54, 81, 108, 134)],
        "预热一步": [ns.learning_rate(step, 5, 1, 1.0, 0.2, 0.1) for step in range(5)],
    }


def rate_without_warmup(ns):
    return {"不预热": [ns.learning_rate(step, 6, 0, 1.0, 0.5, 0.0) for step in range(6)]}


# ── clip_gradients ──


def with_gradients(size):
    """三个参数，一个没有梯度。"""
    import torch

    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2, bias=False))
    model[0].weight.grad, model[1].weight.grad = size * torch.randn(3, 4), size * torch.randn(2, 3)
    return model


def clip_values(ns):
    found = {}
    for size in (5.0, 0.01):
        model = with_gradients(size)
        norm = ns.clip_gradients(model, 1.0)
        found[f"梯度乘 {size}"] = [norm, model[0].weight.grad, model[1].weight.grad, model[0].bias.grad is None]
    return found


def clip_book(ns):
    """书上的例子：范数 5。"""
    import torch

    model = torch.nn.Linear(2, 2, bias=False)
    model.weight.grad = torch.tensor([[1.0, 2.0], [2.0, 4.0]])
    return {"裁剪之前的范数": ns.clip_gradients(model, 1.0), "裁剪之后": model.weight.grad}


# ── accumulate ──


def ragged(seed=5):
    """5 句有长有短的，一句全是提示词。"""
    import torch

    torch.manual_seed(seed)
    window = torch.randint(0, 9, (5, 8))
    inputs, targets = window[:, :-1], window[:, 1:].clone()
    for row, (start, end) in enumerate([(0, 7), (3, 4), (7, 7), (2, 6), (0, 2)]):
        targets[row, :start], targets[row, end:] = -100, -100
    return inputs, targets


def token_model():
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Embedding(9, 6), torch.nn.Tanh(), torch.nn.Linear(6, 9))


def by_token(own, total, parts):
    return 1 / total


def accumulate_values(ns):
    found = {}
    for size in (1, 2, 3, 5):
        model = token_model()
        model[2].bias.grad = model[2].bias.detach().clone()  # 上一批留下的梯度
        loss = ns.accumulate(model, *ragged(), size, by_token)
        found[f"每小批 {size} 句"] = [loss, *[p.grad for p in model.parameters()]]
    return found


def accumulate_weights(ns):
    """weight 收到的三个数：这小批、整批各有几个要学的词元，拆成几小批。"""
    seen = []

    def record(own, total, parts):
        seen.append([own, total, parts])
        return 1.0

    ns.accumulate(token_model(), *ragged(), 2, record)
    return {"收到的": seen}


def accumulate_by_mean(ns):
    """每小批各自求平均的写法：全是提示词的一小批不能变成 0 ÷ 0。"""
    model = token_model()
    loss = ns.accumulate(model, *ragged(), 1, lambda own, total, parts: 1 / own / parts)
    return {"平均的平均": [loss, *[p.grad for p in model.parameters()]]}


def accumulate_nothing(ns):
    import torch

    inputs, targets = ragged()
    return {"拒绝": ns.accumulate(token_model(), inputs, torch.full_like(targets, -100), 2, by_token)}


# ── Recompute ──


def recompute_run(ns, seed=1):
    """线性、tanh、dropout 的一段，重算着反向。"""
    import torch

    torch.manual_seed(0)
    run, x = torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Tanh(), torch.nn.Dropout(0.5)), torch.randn(2, 3, 5, requires_grad=True)
    torch.manual_seed(seed)
    out = ns.Recompute.apply(run, x * 1.0)
    (out * torch.linspace(-1, 1, 5)).pow(2).sum().backward()
    return run, x, out


def recompute_values(ns):
    run, x, out = recompute_run(ns)
    return {"输出": out, "对输入的梯度": x.grad, "对参数的梯度": [p.grad for p in run.parameters()]}


def recompute_random(ns):
    """前向和反向之间又抽了别的随机数：反向之后，从那里接着抽。"""
    import torch

    torch.manual_seed(2)
    out = ns.Recompute.apply(torch.nn.Dropout(0.5), torch.ones(3, 4, requires_grad=True))
    between = torch.rand(3)
    out.sum().backward()
    return {"前向和反向之间的": between, "之后的": torch.rand(4)}


def recompute_saves(ns):
    """存下了几个张量：只有输入；前向跑了几遍：两遍。"""
    import torch

    saved, calls = [], []
    run = torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Tanh())
    run[0].register_forward_hook(lambda *_: calls.append(1))
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tuple(tensor.shape)) or tensor, lambda tensor: tensor):
        out = ns.Recompute.apply(run, torch.ones(2, 5, requires_grad=True))
        after = list(saved)
    out.sum().backward()
    return {"前向之后存下的": [list(shape) for shape in after], "前向跑了几遍": len(calls)}


# ── memorised ──


def recite_values(ns):
    return {
        "从头对几个": [
            ns.recite([1, 2, 3, 4], [1, 2, 9, 4]),
            ns.recite([1, 2], [1, 2, 3]),
            ns.recite([5, 2], [1, 2]),
            ns.recite([1, 2, 3], [1, 2, 3]),
            ns.recite([2, 3, 4], [1, 2, 3]),
        ]
    }


def run_values(ns):
    text = [1, 2, 3, 4, 5, 1, 2, 6, 7, 8]
    known = {length: {tuple(text[i : i + length]) for i in range(len(text) - length + 1)} for length in range(1, 12)}
    return {
        "片段": [sorted(list(piece) for piece in ns.grams([1, 2, 1, 2, 3], length)) for length in (1, 2, 5, 6)],
        "最长的一段": [
            ns.longest_run(written, known) for written in ([9, 9], [9, 3, 9], [4, 5, 1, 9, 1, 2, 6, 7], [1, 2, 3, 4, 5, 1, 2, 6, 7, 8], [5, 1, 2, 3])
        ],
    }


# ── sliding windows ──


def plan_values(ns):
    return {
        f"{n} 个词元，窗口 {length}，步幅 {stride}": [list(each) for each in ns.plan(n, length, stride)]
        for n, length, stride in [(20, 8, 8), (20, 8, 4), (20, 8, 3), (7, 8, 2), (8, 8, 8), (9, 8, 8)]
    }


def evaluate_values(ns):
    import torch

    n, length = 22, 8
    losses = {begin: torch.arange(begin, min(begin + length, n)) + 100.0 * torch.arange(1, min(length, n - begin) + 1) for begin in range(0, n, 2)}
    return {f"步幅 {stride}": list(ns.evaluate(losses, n, length, stride)) for stride in (8, 4, 2)}


COMPONENTS = [
    dict(
        name="learning_rate",
        title="预热加余弦衰减",
        section="附录 D",
        source="ch05/experiments/exp_lr_schedule.py",
        parts=["learning_rate"],
        task="写函数 learning_rate(step, total_steps, warmup_steps, peak_lr, initial_lr, min_lr)，返回第 step 步（从 0 数）的学习率：前 warmup_steps 步从 initial_lr 直线升，第 warmup_steps 步正好是 peak_lr；"
        "之后沿半个余弦往 min_lr 降，到第 total_steps 步才降完。warmup_steps 可以是 0；是负数，或不比 total_steps 小，都是 ValueError。用 math.cos。",
        blanks=["0 <= warmup_steps < total_steps", "initial_lr + step * (peak_lr - initial_lr) / warmup_steps", "(step - warmup_steps) / (total_steps - warmup_steps)", "0.5 * (1 + math.cos(math.pi * progress))"],
        cases=[
            ("数值", rate_values), ("不预热", rate_without_warmup), ("拒绝一样长的", refuses(lambda ns: ns.learning_rate(0, 10, 10, 1.0, 0.0, 0.0))),
            ("拒绝负的", refuses(lambda ns: ns.learning_rate(0, 10, -1, 1.0, 0.0, 0.0))),
        ],
        mutants=[
            ("0.5 * (1 + math.cos(math.pi * progress))", "(1 + math.cos(math.pi * progress))", "余弦没有除以 2。1 + cos 从 2 走到 0，预热一结束学习率就跳到两倍。"),
            ("math.cos(math.pi * progress)", "math.cos(2 * math.pi * progress)", "走了一整个余弦。降到底又升回来，应当只走半个。"),
            ("(step - warmup_steps) / (total_steps - warmup_steps)", "step / total_steps", "余弦从第 0 步就开始走。预热一结束，学习率从半坡上开始。"),
            ("(step - warmup_steps) / (total_steps - warmup_steps)", "(step - warmup_steps) / total_steps", "分母没有减去预热。训练结束时还没有降到底。"),
            ("initial_lr + step * (peak_lr - initial_lr) / warmup_steps", "step * peak_lr / warmup_steps", "没有从 initial_lr 起步。第 0 步的学习率是 0，白走一步。"),
            ("initial_lr + step * (peak_lr - initial_lr) / warmup_steps", "initial_lr + (step + 1) * (peak_lr - initial_lr) / warmup_steps", "早到了一步。第 warmup_steps − 1 步就是最高的了。"),
            ("min_lr + (peak_lr - min_lr) * 0.5", "peak_lr * 0.5", "没有停在 min_lr。一直降到 0。"),
            ("step < warmup_steps", "step <= warmup_steps", "多预热了一步。不预热（0 步）的时候，就成了除以 0。"),
            ("0 <= warmup_steps < total_steps", "0 <= warmup_steps", "没有拒绝太长的预热。学习率一直在升，训练就结束了，也不报错。"),
        ],
    ),
    dict(
        name="clip_gradients",
        title="梯度裁剪",
        section="附录 D",
        source="ch05/experiments/exp_lr_schedule.py",
        parts=["clip_gradients"],
        task="写函数 clip_gradients(model, max_norm)：把全部参数的梯度（没有梯度的跳过）当成一个长向量，算它的 L2 范数；比 max_norm 长，就原地按比例缩短，乘 max_norm / (范数 + 1e-6)，不长的一点不动。返回裁剪之前的范数（float）。不用 clip_grad_norm_。",
        blanks=["p.grad is not None", "torch.stack([grad.norm() for grad in grads]).norm().item()", "min(1.0, max_norm / (norm + 1e-6))", "grad.mul_(scale)"],
        cases=[("数值", clip_values), ("书上的例子", clip_book)],
        mutants=[
            ("min(1.0, max_norm / (norm + 1e-6))", "max_norm / (norm + 1e-6)", "短的被放大了。训练快收敛时梯度很小，放大到 max_norm，步子永远小不下来。"),
            ("torch.stack([grad.norm() for grad in grads]).norm()", "torch.stack([grad.norm() for grad in grads]).sum()", "各个范数直接相加。长向量的范数是平方和再开方，相加就偏大，裁得太狠。"),
            ("torch.stack([grad.norm() for grad in grads]).norm()", "torch.stack([grad.abs().max() for grad in grads]).max()", "用的是最大的一个数。那是另一种范数，参数越多差得越远。"),
            ("        grad.mul_(scale)", "        grad.clamp_(-max_norm, max_norm)", "一个数一个数地截断。方向变了；裁剪只缩短，不转向。"),
            ("        grad.mul_(scale)", "        grad = grad * scale", "没有原地改。新的张量扔掉了，.grad 还是原来的。"),
            ("    return norm", "    return norm * scale", "返回了裁剪之后的。看训练稳不稳，要的是裁剪之前的。"),
        ],
    ),
    dict(
        name="accumulate",
        title="梯度累积",
        section="实验",
        source="ch05/experiments/exp_gradient_accumulation.py",
        parts=["loss_sum", "accumulate"],
        task="写两个函数。loss_sum(model, inputs, targets)：交叉熵之和（不平均），目标是 −100 的不算。accumulate(model, inputs, targets, size, weight)：先清梯度，一批按 size 句拆成小批，每小批的 loss_sum 乘 weight(own, total, parts) 再 backward，"
        "own 是这小批有几个要学的词元（目标不是 −100），total 是整批有几个，parts 是拆成几小批；没有要学的词元的小批跳过。返回乘过的损失之和（float）。整批都没有，ValueError。不更新参数。",
        blanks=['ignore_index=-100, reduction="sum"', "(targets != -100).sum().item()", "zip(inputs.split(size), targets.split(size))", "weight(own, total, len(parts))", "scaled.backward()"],
        cases=[("数值", accumulate_values), ("weight 收到的", accumulate_weights), ("空的小批", accumulate_by_mean), ("拒绝全屏蔽的", accumulate_nothing)],
        mutants=[
            ("    model.zero_grad()", "    pass", "没有清梯度。上一批的混进了这一批。"),
            ('reduction="sum"', 'reduction="mean"', "小批里先平均了。句子有长有短，短的小批里每个词元的分量就重了。"),
            ("ignore_index=-100", "ignore_index=0", "屏蔽错了编号。0 是词元，−100 才是不学的。"),
            ("total = (targets != -100).sum().item()", "total = targets.numel()", "填充和提示词也数进去了。梯度小了好几倍，不报错，只是学得慢。"),
            ("own = (some_targets != -100).sum().item()", "own = some_targets.numel()", "小批里数的是全部位置。要数的是要学的词元。"),
            ("            continue", "            break", "遇到全是提示词的小批就不干了。后面的小批都没有学。"),
            ("loss += scaled.item()", "loss = scaled.item()", "只返回了最后一小批的损失。"),
            ("        if own == 0:", "        if False:", "没有跳过空的小批。weight 里除以 own 的话，0 ÷ 0 就是 nan，整个梯度都废了。"),
        ],
    ),
    dict(
        name="Recompute",
        title="激活值重算",
        section="实验",
        source="ch05/experiments/exp_activation_checkpointing.py",
        parts=["Recompute"],
        task="写一个 torch.autograd.Function，名叫 Recompute，两个静态方法。forward(ctx, run, x)：记下随机数的状态（torch.get_rng_state），只 save_for_backward 输入 x，返回 run(x)。"
        "backward(ctx, grad)：把随机数拨回当时的状态，在 torch.enable_grad() 里对 x.detach().requires_grad_() 重算 run，再把随机数拨回现在的；用 torch.autograd.backward(y, grad) 反向，参数的梯度就加到它们的 .grad 上；返回 None 和对 x 的梯度。",
        blanks=["ctx.run, ctx.rng = run, torch.get_rng_state()", "ctx.save_for_backward(x)", "x.detach().requires_grad_()", "torch.autograd.backward(y, grad)", "None, x.grad"],
        cases=[("数值", recompute_values), ("之后的随机数", recompute_random), ("存下的", recompute_saves)],
        mutants=[
            ("        torch.set_rng_state(ctx.rng)", "        pass", "重算前没有把随机数拨回去。dropout 丢掉的不是同样的数，梯度是另一个网络的，一处也不报错。"),
            ("        torch.set_rng_state(now)", "        pass", "重算后没有拨回来。这一步的梯度是对的，后面的随机数全变了。"),
            ("torch.autograd.backward(y, grad)", "torch.autograd.backward(y, torch.ones_like(grad))", "没有接上传来的梯度。链式法则断了，等于把后面的网络都当成求和。"),
            ("return None, x.grad", "return None, grad", "传回去的是收到的梯度。没有经过这一段，前面的层学错了。"),
            ("ctx.save_for_backward(x)", "ctx.save_for_backward(x, run(x))", "多存了一份。省的就是它；前向还多跑了一遍，dropout 也多抽了一次。"),
        ],
    ),
    dict(
        name="longest_run",
        title="背下了多少",
        section="实验",
        source="ch05/experiments/exp_memorisation.py",
        parts=["grams", "recite", "longest_run"],
        task="写三个函数。grams(ids, length)：所有连着 length 个的片段，元组的集合。recite(written, original)：从头起有几个词元相同，遇到第一个不同的就停，短的完了也停。"
        "longest_run(written, known)：known 是 长度 → 课文里所有那么长的片段（集合），返回 written 里最长的、课文里原样有的一段有几个词元，没有就是 0。",
        blanks=["range(len(ids) - length + 1)", "ours != theirs", "length < len(written)", "grams(written, length + 1) & known[length + 1]"],
        cases=[("从头对几个", recite_values), ("片段和最长的一段", run_values)],
        mutants=[
            ("range(len(ids) - length + 1)", "range(len(ids) - length)", "漏了最后一个片段。n 个词元里，连着 k 个的有 n − k + 1 处。"),
            ("min(len(written), len(original)))", "0)", "全对的成了 0 个。找不到不同的，就是整段都对。"),
            ("if ours != theirs)", "if ours == theirs)", "比反了。数的是从头起有几个不同。"),
            ("while length < len(written) and", "while length < len(written) - 1 and", "整段都照抄的少数了一个。"),
            ("        length += 1", "        length += 2", "一次加长了两个。短一个的没有查过就跳过去，奇数长度数错。"),
        ],
    ),
    dict(
        name="plan",
        title="滑动窗口的困惑度",
        section="实验",
        source="ch05/experiments/exp_perplexity_by_position.py",
        parts=["plan", "evaluate"],
        task="写两个函数。plan(n, length, stride)：n 个要打分的词元，窗口从 0、stride、2·stride……起，长 length（不超过 n），返回列表，每项是（从第几个起，到第几个为止，不含；里面前几个已经打过分），全都打过分就停；stride 不在 1 到 length 之间是 ValueError。"
        "evaluate(losses, n, length, stride)：losses 是 窗口从第几个起 → 它每个词元的损失（一维张量），返回（每个词元打一次分的损失，(n,)；一共送进模型几个词元）。用 torch.cat。",
        blanks=["1 <= stride <= length", "min(begin + length, n)", "(begin, end, scored - begin)", "losses[begin][skip:]"],
        cases=[("切法", plan_values), ("打分", evaluate_values), ("拒绝太大的", refuses(lambda ns: ns.plan(20, 8, 9))), ("拒绝 0", refuses(lambda ns: ns.plan(20, 8, 0)))],
        mutants=[
            ("(begin, end, scored - begin)", "(begin, end, 0)", "重叠的打了两次分。困惑度偏高，因为上文短的那次也算了。"),
            ("        if end == n:", "        if False:", "打完了没有停。多出几个短窗口，什么新词元也没有，白算。"),
            ("end = min(begin + length, n)", "end = begin + length", "最后一个窗口超出了文章。"),
            ("losses[begin][skip:]", "losses[begin][: len(losses[begin]) - skip]", "留了前面的，丢了后面的。要的正是上文长的后面那些。"),
            ("sum(end - begin for begin, end, _ in windows)", "sum(end - begin - skip for begin, end, skip in windows)", "只数了打分的。当上文的也要送进模型，也要钱。"),
            ("not 1 <= stride <= length", "not 1 <= stride", "没有拒绝比窗口还大的步幅。中间的词元漏掉了，困惑度照样算得出来。"),
        ],
    ),
]  # fmt: skip
