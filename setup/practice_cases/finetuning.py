"""分类微调的组件：答在哪个位置，填充与掩码，忽略的类别，先验修正，最划算的界线，近似的捆成一组，LoRA 的并进与拆出

怎么写一项，见 setup/practice.md「加一个组件」。这里不在顶层导入 torch：列清单要立刻。
"""

IMBALANCE, LEAKAGE, PADDING = (f"ch06/experiments/exp_{name}.py" for name in ("imbalance", "leakage", "padding_position"))
ABLATION, LORA = "ch06/experiments/exp_finetune_ablation.py", "ch06/experiments/exp_lora.py"
EXERCISE = "ch07/experiments/exercise_7_4_lora.py"


def scored(seed=1, n=40):
    """一组分数和标签，分数有不少相同的。"""
    import torch

    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(n, generator=generator) < 0.3).long()
    return (torch.randn(n, generator=generator) * 2 + 2 * labels).round() / 2, labels


def prior_values(ns):
    """修正之后的 logit。"""
    import torch

    logits = torch.linspace(-3, 3, 7)
    return {"多算 9 倍": ns.correct_prior(logits, 9.0), "少算一半": ns.correct_prior(logits, 0.5), "没有多算": ns.correct_prior(logits, 1.0)}


def threshold_values(ns):
    """三种代价下的界线，和界线分出的两边。"""
    found = {}
    for a, b in ((1, 10), (1, 1), (10, 1)):
        scores, labels = scored(5)
        level = ns.cheapest_threshold(scores, labels, a, b)
        found[f"{a}:{b}"] = [level, (scores > level).int()]
    return found


def split_values(ns):
    """按组切：有大组，有小组。"""
    import torch

    groups = torch.randint(0, 25, (80,), generator=torch.Generator().manual_seed(4)).unique(return_inverse=True)[1]
    large = torch.cat([torch.zeros(40, dtype=torch.long), torch.arange(1, 41)])
    return {name: ns.group_split(each, torch.Generator().manual_seed(5)) for name, each in (("小组", groups), ("有大组", large))}


def group_values(ns):
    """连成一串的、各不相干的、没有近似的。"""
    import torch

    return {
        "组": [
            ns.groups_of(8, torch.tensor(pairs).view(-1, 2).long())
            for pairs in ([(0, 1), (1, 2), (5, 7)], [(3, 7), (2, 3), (0, 7), (4, 6)], [(0, 7), (1, 7), (2, 7), (3, 7)], [])
        ]
    }


def twin_values(ns):
    """考卷的哪几条在另一份里有近似的：小的在前、大的在前都算。"""
    import torch

    pairs = torch.tensor([(0, 5), (2, 6), (1, 3), (4, 7)])
    return {
        "有没有": [
            ns.twins_of(torch.tensor(asked), torch.tensor(rows), pairs) for asked, rows in (([0, 1, 2], [3, 4, 5]), ([5, 6, 7], [0, 1]), ([3, 4], [1, 7]))
        ]
    }


def real_tokens():
    """左填充、右填充、没有填充的。"""
    import torch

    return torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]]).bool()


def mask_values(ns):
    """掩码，遮与不遮填充词元。"""
    return {"不遮": ns.attention_mask(real_tokens(), False), "遮": ns.attention_mask(real_tokens(), True)}


def position_values(ns):
    """位置；填充词元那里是几不要紧，只要查得到表。"""
    real = real_tokens()
    shifted = ns.positions_of(real, True)
    return {"真词元的位置": shifted[real], "最小的": shifted.min(), "不挪": ns.positions_of(real, False)}


def last_values(ns):
    """右填充时最后一个真词元。"""
    import torch

    real = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]]).bool()
    return {"输出": ns.last_real(torch.arange(24.0).view(3, 4, 2), real)}


def take_values(ns):
    import torch

    x = torch.arange(3 * 5 * 2.0).view(3, 5, 2)
    lengths = torch.tensor([1, 3, 5])
    return {position: ns.take(x, position, lengths) for position in ("last", "first", "flexible")}


def loss_values(ns):
    import torch

    logits, labels = torch.randn(6, 2, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 1, 0, 1, 1])
    return {f"忽略 {ignore}": ns.classification_loss(logits, labels, ignore) for ignore in (-100, 50256, 0, 1)}


def loss_all_ignored(ns):
    import torch

    logits = torch.randn(3, 2, generator=torch.Generator().manual_seed(2), requires_grad=True)
    loss = ns.classification_loss(logits, torch.zeros(3, dtype=torch.long), 0)
    loss.backward()
    return {"损失": loss, "梯度": logits.grad}


def lora_pair(ns):
    """方的、不方的、里层的线性层都有；B 已经不是 0。"""
    import torch

    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(4, 3)))
    ns.replace_linear_with_lora(model, 2, 6.0)
    for name, p in model.named_parameters():
        if name.endswith("B"):
            p.data.normal_()
    return model, torch.randn(5, 4)


def added(ns):
    model, x = lora_pair(ns)
    before = model(x)
    ns.merge_lora(model)
    return {
        "差": (model(x) - before).abs().max(),
        "还挂着几个": sum(type(m).__name__ == "LinearWithLoRA" for m in model.modules()),
        "权重": [p.detach() for p in model.parameters()],
    }


def merged(ns):
    model, x = lora_pair(ns)
    before = model(x)
    adapters = ns.merge(model)
    return {
        "差": (model(x) - before).abs().max(),
        "还挂着几个": sum(type(m).__name__ == "LinearWithLoRA" for m in model.modules()),
        "几层": len(adapters),
        "权重": [p.detach() for p in model.parameters()],
    }


def merged_twice(ns):
    model, _ = lora_pair(ns)
    ns.merge(model)
    before = [p.detach().clone() for p in model.parameters()]
    try:
        ns.merge(model)
        refused = False
    except ValueError:
        refused = True
    return {"拒绝": refused, "权重变了多少": sum((a - b).abs().sum() for a, b in zip(model.parameters(), before))}


def unmerged(ns):
    model, x = lora_pair(ns)
    before, weights = model(x), [p.detach().clone() for p in model.parameters()]
    adapters = ns.merge(model)
    ns.unmerge(adapters)
    try:
        ns.unmerge(adapters)
        refused = False
    except ValueError:
        refused = True
    return {
        "输出的差": (model(x) - before).abs().max(),
        "权重的差": max((a - b).abs().max() for a, b in zip(model.parameters(), weights)),
        "再拆一次，拒绝": refused,
    }


def rates(ns):
    curves = {
        "顶点在 1.7": [0.3 + 0.1 * (i - 1.7) ** 2 for i in range(5)],
        "在左边上": [1.0, 2.0, 3.0],
        "在右边上": [3.0, 2.0, 1.0],
        "两格一样低": [9.0, 1.0, 1.0, 9.0],
        "平的": [1.0, 1.0, 1.0, 1.0],
    }
    return {name: ns.best_rate(losses) for name, losses in curves.items()}


COMPONENTS = [
    dict(
        name="take",
        title="答在哪个位置",
        section="实验",
        source=ABLATION,
        parts=["take"],
        task='写函数 take(x, position, lengths)：x 是 (b, t, d)，返回 (b, d)。position 是 "first" 取第一个位置，"last" 取最后一个，"flexible" 取每条最后一个真的词元（lengths 是每条有几个真的词元，(b,)）。',
        blanks=["torch.arange(len(x)), lengths - 1", '0 if position == "first" else -1'],
        cases=[("三种位置", take_values)],
        mutants=[
            ("lengths - 1]", "lengths]", "差了一个。从 0 数起，最后一个真的词元是第 lengths − 1 个；取第 lengths 个，就是填充词元，最长的那条还会越界。"),
            ("lengths - 1]", "lengths - 2]", "多减了一个，取的是倒数第二个词元。"),
            ('0 if position == "first" else -1', '-1 if position == "first" else 0', "第一个和最后一个取反了。因果掩码下，第一个位置只看得见自己。"),
            ("x[torch.arange(len(x)), lengths - 1]", "x[:, lengths - 1][:, 0]", "每条都取了同一个位置。要两个下标并排走：第几条，和它的第几个位置。"),
        ],
    ),
    dict(
        name="classification_loss",
        title="忽略一类的交叉熵",
        section="实验",
        source=ABLATION,
        parts=["classification_loss"],
        task="写函数 classification_loss(logits, labels, ignore)：logits (b, 2)、labels (b,)，返回交叉熵的平均；答案等于 ignore 的不算，分母也不数；全被忽略时返回 0，不是 nan。",
        blanks=["ignore_index=ignore", "(labels != ignore).sum().clamp(min=1)"],
        cases=[("数值", loss_values), ("全被忽略", loss_all_ignored)],
        mutants=[
            ("ignore_index=ignore", "ignore_index=-100", "没有忽略。ignore_index 默认是 −100，要写成给的那个。"),
            ("(labels != ignore).sum().clamp(min=1)", "len(labels)", "分母把忽略的也数了进去，损失小了。"),
            ("(labels != ignore).sum().clamp(min=1)", "(labels != ignore).sum()", "全被忽略时是 0 ÷ 0 = nan。一批里碰巧全是那一类，就会遇到。"),
            ('reduction="sum"', 'reduction="mean"', "平均了两次：先被 PyTorch 平均，又除以一次。"),
        ],
    ),
    dict(
        name="merge_lora",
        title="LoRA：加回原来的权重",
        section="练习 7.4",
        source=EXERCISE,
        parts=["merge_lora"],
        needs=["LoRALayer", "replace_linear_with_lora"],
        task="写函数 merge_lora(model)：把每个 LinearWithLoRA 的改动加到原来的权重上，换回普通的 nn.Linear；一层套一层的也要走到。",
        blanks=["module.lora.scaling * (module.lora.A @ module.lora.B).T", "isinstance(module, LinearWithLoRA)"],
        cases=[("加回去", added)],
        mutants=[
            ("module.lora.scaling * (module", "(module", "忘了乘缩放 α/r。不并时乘了，并的时候也要乘。"),
            (
                "(module.lora.A @ module.lora.B).T",
                "(module.lora.A @ module.lora.B)",
                "忘了转置。nn.Linear 的权重是 (out, in)；方的矩阵不转也加得上，一处也不报错，结果是错的。",
            ),
            ("            merge_lora(module)", "            pass", "只看了最外面一层。线性层多半在里面。"),
            ("            setattr(model, name, module.linear)", "            pass", "加了，却没有拆下来：改动算了两遍。"),
        ],
    ),
    dict(
        name="merge_unmerge",
        title="LoRA：并进去，拆出来",
        section="实验",
        source=LORA,
        parts=["merge", "unmerge"],
        needs=["merge_lora"],
        task="写两个函数。merge(model)：用 merge_lora 把改动并进权重；返回列表，每项是（上一级模块，名字，LinearWithLoRA）；一个 LinearWithLoRA 也没有，报 ValueError（多半是并过了）。unmerge(adapters)：adapters 是 merge 的结果，从每个原来的权重里减去改动，把 LinearWithLoRA 挂回去；已经拆出来了，报 ValueError，权重一点不动。",
        blanks=["isinstance(child, LinearWithLoRA)", "not adapters", "getattr(parent, name) is not layer.linear", "setattr(parent, name, layer)"],
        cases=[("并进去", merged), ("并两次", merged_twice), ("拆出来", unmerged)],
        mutants=[
            ("if not adapters:", "if False:", "没有拒绝第二次。换一种写法（把层留着），第二次就把改动加成了两倍。"),
            (
                "isinstance(child, LinearWithLoRA)]",
                "isinstance(child, LinearWithLoRA) and child.linear.in_features == child.linear.out_features]",
                "只数了方的线性层。前馈网络、分组的键和值都不是方的。",
            ),
            ("weight -= ", "weight += ", "该减，写成了加：改动成了两倍。"),
            ("layer.lora.scaling * (", "(", "忘了乘缩放，减去的与加上的不是同一个数。"),
            ("        setattr(parent, name, layer)", "        pass", "权重还原了，LoRA 却没有挂回去：训练的成果丢了。"),
            (
                "if any(getattr(parent, name) is not layer.linear",
                "if False and any(getattr(parent, name) is not layer.linear",
                "拆两次没有拒绝，原来的权重就毁了。",
            ),
        ],
    ),
    dict(
        name="best_rate",
        title="谷底在第几格",
        section="实验",
        source=LORA,
        parts=["best_rate"],
        task="写函数 best_rate(losses)：返回损失最低的是第几格（从 0 数，小数）：最低的在两头，就返回那一格；在中间，用它和左右两格的抛物线求顶点；三点连成直线时返回那一格。",
        blanks=["min(range(len(losses)), key=losses.__getitem__)", "0.5 * (left - right) / (left - 2 * middle + right)"],
        cases=[("谷底", rates)],
        mutants=[
            ("0.5 * (left - right)", "0.5 * (right - left)", "偏反了。左边更高，谷底在右边。"),
            ("0.5 * (left - right)", "(left - right)", "少了 0.5，偏多了一倍，可能跑出这一格。"),
            ("(left - 2 * middle + right)", "(left - middle + right)", "二阶差分是 左 − 2 × 中 + 右。"),
            ("if not 0 < i < len(losses) - 1:", "if i == 0:", "在右边的边上，右边没有格子了，会越界。"),
        ],
    ),
    dict(
        name="correct_prior",
        title="先验修正",
        section="实验",
        source=IMBALANCE,
        parts=["correct_prior"],
        task="写一个函数 correct_prior(logits, ratio)：训练时垃圾短信多算了 ratio 倍，赔率也就高估了 ratio 倍；返回修正过的 logit。",
        blanks=["math.log(ratio)"],
        cases=[("修正", prior_values)],
        mutants=[
            ("logits - math.log(ratio)", "logits + math.log(ratio)", "方向反了：多算了，就高估了，要减。"),
            ("logits - math.log(ratio)", "logits / ratio", "除的应是赔率；logit 是赔率的对数，除法变成减法。"),
            ("logits - math.log(ratio)", "logits - ratio", "忘了取对数。"),
            ("logits - math.log(ratio)", "logits - math.log2(ratio)", "底数不对：logit 用的是自然对数。"),
        ],
    ),
    dict(
        name="cheapest_threshold",
        title="代价最小的界线",
        section="实验",
        source=IMBALANCE,
        parts=["cheapest_threshold"],
        task="写一个函数 cheapest_threshold(logits, labels, false_alarm, miss)：大于界线的判成垃圾（标签 1）。误杀一条的代价是 false_alarm，漏过一条是 miss；把每一种切法都试一遍（同分的不能切开），返回总代价最小的界线：切在两个相邻的分数正中间，最高的之上、最低的之下各多留 1；一样好的有几处，取中间那处。",
        blanks=[
            "logits.sort(descending=True)",
            "(labels[order] == 1).cumsum(0), (1, 0)",
            "torch.arange(len(spam)) - spam",
            "spam[-1] - spam",
            "edges[1:] == edges[:-1]",
        ],
        cases=[("界线", threshold_values)],
        mutants=[
            (
                "false_alarm * (torch.arange(len(spam)) - spam) + miss *",
                "miss * (torch.arange(len(spam)) - spam) + false_alarm *",
                "两种代价用反了：误杀的是正常短信被判成垃圾。",
            ),
            ("torch.where(edges[1:] == edges[:-1], math.inf, total)", "total", "从同分的中间切开了：真用的时候，同分的只能同进同出。"),
            ("(edges[best] + edges[best + 1]) / 2", "edges[best]", "界线正好压在一条短信的分数上：大于才算，那一条就判到了另一边。"),
            ("miss * (spam[-1] - spam)", "miss * spam", "数成了查出来的垃圾短信；漏过的是还没有进的那些。"),
            ("total == total.min()", "total == total.max()", "取成了代价最大的。"),
        ],
    ),
    dict(
        name="groups_of",
        title="近似的捆成一组",
        section="实验",
        source=LEAKAGE,
        parts=["groups_of"],
        task="写一个函数 groups_of(n, pairs)：n 条短信，pairs 是近似的每一对，(m, 2)。甲像乙、乙像丙，三条就是一组。返回每条在第几组，(n,)，从 0 起，按每组的代表从小到大编号；代表是并进来时在前面的那一条（top(i)）。",
        blanks=["leader[leader[i]]", "leader[top(j)] = top(i)", "unique(return_inverse=True)[1]"],
        cases=[("分组", group_values)],
        mutants=[
            ("leader[top(j)] = top(i)", "leader[j] = i", "只改了这一条的，没有改它那一组的：乙原来的同伴被丢下了。"),
            ("while leader[i] != i:", "if leader[i] != i:", "只往上找了一步：串得长的组，找不到真正的代表，同组的得到不同的号。"),
            ("for i, j in pairs.tolist():", "for i, j in pairs.tolist()[:1]:", "只并了第一对。"),
            (".unique(return_inverse=True)[1]", "", "返回的是代表的序号，不是第几组：编号中间有空的。"),
        ],
    ),
    dict(
        name="group_split",
        title="按组切",
        section="实验",
        source=LEAKAGE,
        parts=["group_split"],
        task="写一个函数 group_split(groups, generator)：groups 是每条在第几组，(n,)。用 torch.randperm(组数, generator=generator) 洗组的次序，按它把短信排好（同组的挨着，原来的次序不变）；训练集取到七成处，测试集从八成处起；切在一组的中间，就退到那一组的开头。返回两份的序号。",
        blanks=[
            "torch.randperm(groups.max() + 1, generator=generator)[groups]",
            "order.sort(stable=True)",
            "torch.searchsorted(order, order[int(len(rows) * share)])",
        ],
        cases=[("切分", split_values)],
        mutants=[
            (
                "torch.randperm(groups.max() + 1, generator=generator)[groups]",
                "torch.randperm(len(groups), generator=generator)",
                "洗的是短信，不是组：近似的又落在两边。",
            ),
            ("torch.randperm(groups.max() + 1, generator=generator)[groups]", "groups", "没有洗：每次切得都一样，组的次序又是数据里的次序。"),
            (
                "torch.searchsorted(order, order[int(len(rows) * share)]).item()",
                "int(len(rows) * share)",
                "切在了组的中间：大的组会一半在训练集，一半在测试集。",
            ),
            ("rows[cut[1] :]", "rows[cut[0] :]", "测试集从训练集的末尾就开始，把验证集也包括了进去。"),
        ],
    ),
    dict(
        name="twins_of",
        title="考卷里哪些漏过题",
        section="实验",
        source=LEAKAGE,
        parts=["twins_of"],
        task="写一个函数 twins_of(asked, rows, pairs)：pairs 是近似的每一对，(m, 2)，小的序号在前。返回 asked 的每一条在 rows 里有没有近似的，布尔的 (q,)。",
        blanks=["torch.cat([pairs, pairs.flip(1)])", "torch.isin(both[:, 1], rows)"],
        cases=[("漏题", twin_values)],
        mutants=[
            ("torch.cat([pairs, pairs.flip(1)])", "pairs", "每一对只看了一个方向：考的序号大、练的序号小，就看不见。"),
            ("torch.isin(both[:, 1], rows), 0]", "torch.isin(both[:, 0], rows), 0]", "查的是自己在不在训练集里，不是近似的那一条。"),
            ("both[torch.isin(both[:, 1], rows), 0]", "both[:, 0]", "只要有近似的就算，没有看近似的那一条在不在训练集里。"),
            ("return torch.isin(asked,", "return ~torch.isin(asked,", "反了：得到的是没有漏的。"),
        ],
    ),
    dict(
        name="attention_mask",
        title="遮住填充词元的掩码",
        section="实验",
        source=PADDING,
        parts=["attention_mask"],
        task="写一个函数 attention_mask(real, masked)：real 是不是真词元，(b, t)。返回布尔的掩码，True 是不许看，(b, 1, t, t)：未来的不许看；masked 为 True 时，填充词元也不许看，但自己总看得见自己。",
        blanks=["triu(diagonal=1)", "~real[:, None, None, :]", "~torch.eye(t, dtype=torch.bool)"],
        cases=[("掩码", mask_values)],
        mutants=[
            ("~real[:, None, None, :]", "~real[:, None, :, None]", "遮的是行（谁在看），不是列（看谁）：填充词元照样被看见。"),
            ("~real[:, None, None, :]", "real[:, None, None, :]", "反了：遮住了真词元，留下了填充词元。"),
            ("& ~torch.eye(t, dtype=torch.bool)", "& True", "左填充时，开头的填充词元一个也不许看，softmax 是 0 ÷ 0，算出 nan。"),
            ("triu(diagonal=1)", "triu(diagonal=0)", "把自己也遮住了：第一个词元一个也看不见，算出 nan。"),
            ("(mask | ~real[:, None, None, :])", "(mask & ~real[:, None, None, :])", "两个条件要有一个就遮；写成「且」，未来的真词元就漏进来了。"),
        ],
    ),
    dict(
        name="positions_of",
        title="每个词元的位置",
        section="实验",
        source=PADDING,
        parts=["positions_of"],
        task="写一个函数 positions_of(real, shifted)：real 是不是真词元，(b, t)。shifted 为 True 时，位置从第一个真词元数起（前面的填充词元不小于 0 就行）；否则从最左边数起。返回 (b, t)。",
        blanks=["real.cumsum(dim=1) - 1", "clamp(min=0)", "torch.arange(real.shape[1]).expand(real.shape)"],
        cases=[("位置", position_values)],
        mutants=[
            ("(real.cumsum(dim=1) - 1)", "real.cumsum(dim=1)", "从 1 数起了：每个真词元都用了后一个位置的嵌入。"),
            (".clamp(min=0)", "", "前面的填充词元得到 −1：查位置嵌入时出错，或查到最后一行。"),
            ("real.cumsum(dim=1)", "real.cumsum(dim=0)", "沿着批加了：位置要在一条短信里面数。"),
            ("if shifted else", "if not shifted else", "两种情形反了。"),
        ],
    ),
    dict(
        name="last_real",
        title="最后一个真词元",
        section="实验",
        source=PADDING,
        parts=["last_real"],
        task="写一个函数 last_real(outputs, real)：右填充的一批，outputs 是 (b, t, d)，real 是不是真词元，(b, t)。返回每条最后一个真词元的输出，(b, d)。",
        blanks=["torch.arange(len(real))", "real.sum(dim=1) - 1"],
        cases=[("最后一个", last_values)],
        mutants=[
            ("real.sum(dim=1) - 1", "real.sum(dim=1) - 2", "差了一格：取到了倒数第二个真词元。"),
            ("real.sum(dim=1) - 1", "real.sum(dim=1).clamp(max=real.shape[1] - 1)", "差了一格：取到了第一个填充词元。"),
            ("outputs[torch.arange(len(real)), real.sum(dim=1) - 1]", "outputs[:, -1]", "取了最后一个位置，那里多半是填充词元。"),
            ("outputs[torch.arange(len(real)), real.sum(dim=1) - 1]", "outputs[:, real.sum(dim=1).max() - 1]", "每条都取了同一个位置：最长的那条才对。"),
        ],
    ),
]
