"""解码的组件：top-p、min-p、重复惩罚、束搜索的一步、推测解码的接受和拒绝

怎么写一项，见 setup/practice.md「加一个组件」。这里不在顶层导入 torch：列清单要立刻。
"""


def logits(*shape, seed=1, scale=2.0):
    """一份固定的 logits。"""
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def refuses(call, *values):
    """每个不该收的值都试一次：报 ValueError 就是 True。"""
    result = {}
    for value in values:
        try:
            call(value)
            result[f"拒绝 {value}"] = False
        except ValueError:
            result[f"拒绝 {value}"] = True
    return result


# ── top-p ──


def top_p_values(ns):
    return {f"p = {p}": ns.filter_top_p(logits(3, 12), p) for p in (0.2, 0.5, 0.9, 0.97)}


def top_p_crossing(ns):
    """概率正好是 1/2、1/4、1/8、1/8，打乱了次序：跨过 p 的那一个也要留下。"""
    import torch

    x = torch.tensor([[0.125, 0.5, 0.125 - 1e-4, 0.25 + 1e-4]]).log()
    return {f"p = {p}，留下哪些": (ns.filter_top_p(x, p) > -torch.inf).int() for p in (0.3, 0.6, 0.8)}


def top_p_edges(ns):
    return {"p 很小，也留一个": ns.filter_top_p(logits(2, 6), 1e-6), "一行": ns.filter_top_p(logits(6), 0.7)} | refuses(lambda p: ns.filter_top_p(logits(1, 4), p), 0.0, -0.5, 1.5)


# ── min-p ──


def min_p_values(ns):
    return {f"min_p = {p}": ns.filter_min_p(logits(3, 12), p) for p in (0.0, 0.02, 0.1, 0.5, 1.0)}


def min_p_shapes(ns):
    """同样的 min_p，尖的留得少，平的留得多。"""
    import torch

    return {f"放大 {scale} 倍，留下几个": (ns.filter_min_p(logits(2, 40, scale=scale), 0.1) > -torch.inf).sum(dim=-1) for scale in (0.1, 1.0, 5.0)}


def min_p_edges(ns):
    return {"一行": ns.filter_min_p(logits(6), 0.2)} | refuses(lambda p: ns.filter_min_p(logits(1, 4), p), -0.1, 1.1)


# ── 重复惩罚 ──


def penalty_values(ns):
    import torch

    ids = torch.tensor([[0, 3, 5], [1, 1, 7]])
    return {f"penalty = {p}": ns.repetition_penalty(logits(2, 8), ids, p) for p in (1.0, 1.2, 2.0, 0.5)}


def penalty_once(ns):
    """出现三次，也只压一回；没有出现的不动，原来的 logits 也不改。"""
    import torch

    x = torch.tensor([[3.0, -3.0, 1.0, -1.0]])
    return {"出现三次": ns.repetition_penalty(x, torch.tensor([[0, 0, 0, 1]]), 1.5), "原来的": x}


def penalty_edges(ns):
    import torch

    return refuses(lambda p: ns.repetition_penalty(logits(1, 4), torch.tensor([[1]]), p), 0.0, -1.0)


# ── 束搜索的一步 ──


def step(ns, rows, size, beams, eos_id=None, seed=1):
    """随机的对数概率和总分，走一步；返回接着写的和写完的。"""
    import torch

    scores = logits(rows, seed=seed + 50)
    running, finished = ns.beam_step(torch.log_softmax(logits(rows, size, seed=seed), dim=-1), scores, beams, eos_id)
    return {"接着写的": [list(map(float, each)) for each in running], "写完的": [list(map(float, each)) for each in finished]}


def beam_values(ns):
    return {"3 条束": step(ns, 3, 9, 3), "第一步，只有 1 行": step(ns, 1, 12, 4), "1 条束": step(ns, 1, 5, 1)}


def beam_finishes(ns):
    """每个词元都当一回结束词元：写完的要进前 n 名，接着写的总有 n 条。"""
    return {f"结束词元是 {eos}": step(ns, 3, 6, 3, eos, seed=seed) for seed in (2, 3) for eos in range(6)}


# ── 推测解码：接受和拒绝 ──


def tables(seed, n, size=5):
    """p (n + 1, V)、q (n, V)，和草稿猜的。"""
    import torch

    p, q = torch.softmax(logits(n + 1, size, seed=seed), dim=-1), torch.softmax(logits(n, size, seed=seed + 9), dim=-1)
    return p, q, torch.multinomial(q, 1, generator=torch.Generator().manual_seed(seed))[:, 0].tolist() if n else []


def accept_counts(ns):
    """很多次，每个长度、每个词元出现几成：与次序、抽签的办法无关，只看分布。"""
    import torch

    p, q, _ = tables(1, 2, 3)
    torch.manual_seed(1)
    length, first = torch.zeros(3), torch.zeros(3)
    for x, y in torch.cartesian_prod(torch.arange(3), torch.arange(3)).tolist():
        for _ in range(60):
            tokens = ns.accept_draft(p, q, [x, y])
            length[len(tokens) - 1] += q[0, x] * q[1, y] / 60
            first[tokens[0]] += q[0, x] * q[1, y] / 60
    return {"写出 1、2、3 个的机会（四舍五入到 0.2）": (length * 5).round(), "第一个词元与 p 相差不到 0.08": (first - p[0]).abs().max().item() < 0.08}


def accept_greedy(ns):
    """温度 0：p 是 one-hot，结果就定了。"""
    import torch

    p = torch.eye(5)[[2, 4, 1, 3]]
    return {f"草稿猜 {drafted}": ns.accept_draft(p, torch.eye(5)[drafted], drafted) for drafted in ([2, 4, 1], [2, 4, 0], [0, 4, 1], [2, 0, 1])} | {"一个也没有猜": ns.accept_draft(p[:1], torch.zeros(0, 5), [])}


def accept_extremes(ns):
    """该收的一定收，不该收的一定不收；重抽只从 p 比 q 大的地方抽。"""
    import torch

    torch.manual_seed(2)
    p, q = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]), torch.tensor([[0.2, 0.2, 0.6]])
    tight = torch.tensor([[0.1, 0.6, 0.3], [0.0, 0.0, 1.0]]), torch.tensor([[0.8, 0.1, 0.1]])
    return {
        "p 比 q 大，总收下": [ns.accept_draft(p, q, [0]) for _ in range(20)],
        "p 是 0，总拒绝": [len(ns.accept_draft(p, q, [2])) for _ in range(20)],
        "拒绝以后，不会再抽到它": sorted({ns.accept_draft(*tight, [0])[0] for _ in range(100)} - {0}),
        "收下的机会是 1/8，四舍五入到 0.1": round(sum(len(ns.accept_draft(*tight, [0])) == 2 for _ in range(600)) / 600 * 10),
    }


def leftover_values(ns):
    import torch

    p, q, _ = tables(3, 1)
    return {"多出来的": ns.leftover(p[0], q[0]), "一样的": ns.leftover(torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.5])), "不重叠": ns.leftover(torch.tensor([0.25, 0.75, 0.0]), torch.tensor([0.0, 0.0, 1.0]))}


SAMPLING, SPECULATIVE = "ch05/experiments/exp_sampling.py", "ch05/experiments/exp_speculative_decoding.py"

COMPONENTS = [
    dict(
        name="filter_top_p",
        title="核采样 top-p",
        section="实验",
        source=SAMPLING,
        parts=["filter_top_p"],
        task="写函数 filter_top_p(logits, top_p)：logits (b, V)，最后一维从大到小数，概率加起来到 top_p 就停，跨过 top_p 的那一个也留下，其余变成 -inf，返回 (b, V)。top_p 不在 (0, 1] 里时 ValueError；再小也至少留一个。",
        blanks=["logits.sort(dim=-1, descending=True)", "probs.cumsum(dim=-1) - probs", "before >= top_p"],
        cases=[("数值", top_p_values), ("跨过 p 的那一个", top_p_crossing), ("边上的", top_p_edges)],
        mutants=[
            ("probs.cumsum(dim=-1) - probs", "probs.cumsum(dim=-1)", "跨过 p 的那一个也扔了。最大的概率就超过 p 时，一个也不剩，softmax 得到 nan。"),
            ("descending=True", "descending=False", "从小到大数了。留下的全是不像话的词元。"),
            ("before >= top_p", "before > 1 - top_p", "留的是 1 − p。p 越大，反而留得越少。"),
            (".scatter(-1, order, before >= top_p)", ".copy_(before >= top_p)", "没有放回原来的次序。扔掉的不是该扔的词元。"),
            ("torch.softmax(ordered, dim=-1)", "torch.softmax(ordered, dim=0)", "对错了维。每一行各是一个分布，要在最后一维上加起来是 1。"),
            ("if not 0 < top_p <= 1:", "if not 0 <= top_p <= 1:", "收下了 0。p = 0 时一个也不留。"),
        ],
    ),
    dict(
        name="filter_min_p",
        title="min-p 过滤",
        section="实验",
        source=SAMPLING,
        parts=["filter_min_p"],
        task="写函数 filter_min_p(logits, min_p)：logits (b, V)，概率小于"
        "最大概率的 min_p 倍的，变成 -inf，返回 (b, V)。min_p 不在 [0, 1] 里时 ValueError。",
        blanks=["torch.softmax(logits, dim=-1)", "probs < min_p * probs.amax(dim=-1, keepdim=True)"],
        cases=[("数值", min_p_values), ("尖的和平的", min_p_shapes), ("边上的", min_p_edges)],
        mutants=[
            ("probs < min_p * probs.amax(dim=-1, keepdim=True)", "probs < min_p", "门槛没有乘最大的概率。分布平的时候，一个也过不了。"),
            ("probs < min_p * probs.amax(dim=-1, keepdim=True)", "probs <= min_p * probs.amax(dim=-1, keepdim=True)", "等于门槛的也扔了。min_p = 1 时连最大的也不剩。"),
            ("probs.amax(dim=-1, keepdim=True)", "probs.amax()", "用了整批里最大的概率。每一行的门槛要看自己。"),
            ("probs = torch.softmax(logits, dim=-1)", "probs = logits", "比的是 logits，不是概率。logits 的比例没有意义，负的更是反的。"),
            ("if not 0 <= min_p <= 1:", "if not 0 < min_p <= 1:", "拒绝了 0。0 是全留，合法。"),
        ],
    ),
    dict(
        name="repetition_penalty",
        title="重复惩罚",
        section="实验",
        source=SAMPLING,
        parts=["repetition_penalty"],
        task="写函数 repetition_penalty(logits, ids, penalty)：logits (b, V)，ids (b, t) 是每一行已经有的词元。出现过的词元，logits 正的除以 penalty，负的乘以 penalty，出现几次都只压一回；别的不动，返回新的 (b, V)，不改原来的。penalty 不是正数时 ValueError。",
        blanks=["logits.gather(-1, ids)", "torch.where(seen < 0, seen * penalty, seen / penalty)"],
        cases=[("数值", penalty_values), ("只压一回", penalty_once), ("边上的", penalty_edges)],
        mutants=[
            ("torch.where(seen < 0, seen * penalty, seen / penalty)", "seen / penalty", "负的也除了。−6 ÷ 1.2 = −5，反而变大，成了鼓励重复。"),
            ("torch.where(seen < 0, seen * penalty, seen / penalty)", "torch.where(seen < 0, seen / penalty, seen * penalty)", "乘除反了。出现过的更容易再写一遍。"),
            ("torch.where(seen < 0, seen * penalty, seen / penalty)", "seen - penalty", "减了一个数。那是另一种（存在惩罚 presence penalty），力度不随 logits 的大小变。"),
            ("return logits.scatter(", "return logits.scatter_(", "改了原来的 logits。调用的人还要用它算概率。"),
            ("return logits.scatter(-1, ids, torch.where(seen < 0, seen * penalty, seen / penalty))", "return logits.scatter_add(-1, ids, torch.where(seen < 0, seen * penalty, seen / penalty) - seen)", "出现几次压几回。写过三遍的逗号会被压得再也写不出来。"),
            ("if not penalty > 0:", "if penalty < 0:", "收下了 0。除以 0 得到无穷大。"),
        ],
    ),
    dict(
        name="beam_step",
        title="束搜索的一步",
        section="实验",
        source=SAMPLING,
        parts=["beam_step"],
        task="写函数 beam_step(log_probs, scores, num_beams, eos_id=None)：log_probs (n, V) 是每条束下一个词元的对数概率，scores (n,) 是每条束的总分。从全部 n · V 种里取总分最高的 2 · num_beams 种（从高到低），返回两个列表，每项是（总分，接在第几条束后面，词元编号）：接着写的，是不等于 eos_id 的前 num_beams 种；写完的，是前 num_beams 名里等于 eos_id 的。",
        blanks=["scores[:, None] + log_probs", "total.flatten().topk(2 * num_beams)", "candidates[:num_beams]"],
        cases=[("数值", beam_values), ("写完的", beam_finishes)],
        mutants=[
            ("scores[:, None] + log_probs", "log_probs", "没有加上前面的总分。比的成了"
             "只看这一个词元。"),
            ("place // log_probs.shape[1], place % log_probs.shape[1]", "place % log_probs.shape[1], place // log_probs.shape[1]", "束的编号和词元的编号反了。展平以后，商是第几行，余数是第几列。"),
            ("candidates[:num_beams] if each[2] == eos_id", "candidates if each[2] == eos_id", "名次靠后的也算写完了。它们是给接着写的凑数的，没有进前 n 名。"),
            ("each[2] != eos_id", "True", "写完的还接着写。结束词元后面再写，就是胡话。"),
            ("each[2] != eos_id][:num_beams]", "each[2] != eos_id]", "留下的多了。宽度是 n，就只留 n 条，不然每步都翻倍。"),
        ],
    ),
    dict(
        name="accept_draft",
        title="推测解码：接受和拒绝",
        section="实验",
        source=SPECULATIVE,
        parts=["leftover", "accept_draft"],
        task="写两个函数。leftover(p, q)：两个 (V,) 的概率，返回 max(0, p − q) 除以它的和；和是 0 就返回 p。"
        "accept_draft(p, q, drafted, leftover=leftover)：p (n + 1, V)、q (n, V) 是大模型和草稿在每个位置的概率，drafted 是草稿猜的 n 个。依次以 min(1, p/q) 的机会收下（torch.rand(())）；第一个不收的，从 leftover(p[i], q[i]) 里抽一个（torch.multinomial），返回收下的和它；全收下，再从 p 的最后一行抽一个。返回 list[int]。",
        blanks=["(p - q).clamp(min=0)", "torch.rand(()) * q[i, token] < p[i, token]", "leftover(p[i], q[i])", "torch.multinomial(p[-1], 1)"],
        cases=[("多出来的", leftover_values), ("贪心", accept_greedy), ("一定收、一定不收", accept_extremes), ("写出几个", accept_counts)],
        mutants=[
            ("(p - q).clamp(min=0)", "p", "拒绝之后直接从 p 重抽。草稿偏爱的词元多了一次机会，分布就不是 p 了。"),
            ("(p - q).clamp(min=0)", "(q - p).clamp(min=0)", "减反了。抽到的全是草稿猜得太多的词元。"),
            ("(p - q).clamp(min=0)", "(p - q).abs()", "取了绝对值。草稿多出来的部分也会被抽到，可那正是刚刚拒绝的。"),
            ("more / more.sum() if more.sum() > 0 else p", "more if more.sum() > 0 else p", "没有除以和。multinomial 会替你除，别处用它就不是概率了。"),
            ("torch.rand(()) * q[i, token] < p[i, token]", "torch.rand(()) < p[i, token]", "忘了除以 q。草稿越有把握的词元，本来越该多收。"),
            ("torch.rand(()) * q[i, token] < p[i, token]", "p[i, token] > 0", "大模型给了一点概率就收。写出的全随草稿，不随大模型。"),
            ("torch.rand(()) * q[i, token] < p[i, token]", "q[i, token] <= p[i, token]", "只收 p 不小于 q 的。p/q 是 0.9 的也该有九成机会。"),
            ("torch.multinomial(p[-1], 1)", "torch.multinomial(p[0], 1)", "白得的那个从错的位置抽了。全收下以后，下一个位置是 p 的最后一行。"),
            ("return drafted + [torch.multinomial(p[-1], 1).item()]", "return drafted", "全收下以后没有再抽一个。验的时候大模型已经把下一个也算好了，不用白不用。"),
            ("drafted[:i] + [", "drafted + [", "没有扔掉后面的。第一个不收，后面的是接着它猜的，全不作数。"),
        ],
    ),
]
