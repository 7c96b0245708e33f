"""偏好与强化学习的组件：DPO、IPO、SimPO 的损失，GRPO 的优势、损失、KL、掩码，共用题目的缓存；几条标注配的岭回归

怎么写一项，见 setup/practice.md「加一个组件」。这里不在顶层导入 torch：列清单要立刻。
"""


def numbers(*shape, seed=1, scale=1.0):
    """一份固定的随机数。"""
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def refused(call, *arguments):
    """报 ValueError 就是 True。"""
    try:
        call(*arguments)
    except ValueError:
        return True
    return False


# ── DPO ──


def logprob_inputs(seed=1):
    """三行，各 7 个词元：提示词长短不同，右边有填充。"""
    import torch

    labels = torch.randint(0, 11, (3, 7), generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(3, 7, dtype=torch.bool)
    mask[0, 2:5] = mask[1, 4:7] = mask[2, 1:7] = True
    return numbers(3, 7, 11, seed=seed), labels, mask


def logprob_values(ns):
    return {f"第 {seed} 份": ns.compute_logprobs(*logprob_inputs(seed)) for seed in (1, 2)}


def logprob_outside(ns):
    """提示词、填充那里的 logits 随便改（回答的前一个位置除外），和不变。"""
    logits, labels, mask = logprob_inputs(3)
    before = ns.compute_logprobs(logits, labels, mask)
    used = mask.roll(-1, dims=1)
    used[:, -1] = False
    return {"变了多少": ns.compute_logprobs(logits.masked_fill(~used[:, :, None], 7.0), labels, mask) - before}


def logprob_gradient(ns):
    logits, labels, mask = logprob_inputs(4)
    logits.requires_grad_()
    ns.compute_logprobs(logits, labels, mask).sum().backward()
    return {"每个位置的梯度": logits.grad.abs().sum(dim=-1)}


def four(seed=1, scale=5.0):
    """四份对数概率：模型的、参考的，选中的、被拒的。"""
    return [numbers(6, seed=seed * 10 + i, scale=scale) - 20 for i in range(4)]


def dpo_values(ns):
    return {f"beta = {beta}": list(ns.compute_dpo_loss(*four(), beta=beta)) for beta in (0.1, 0.5, 2.0)} | {"默认的 beta": list(ns.compute_dpo_loss(*four(2)))}


def dpo_start(ns):
    """还没训练，两个模型一样：损失是 ln 2，奖励都是 0。"""
    chosen, rejected, *_ = four(3)
    return {"刚开始": list(ns.compute_dpo_loss(chosen, rejected, chosen, rejected))}


def dpo_extreme(ns):
    import torch

    zero = torch.zeros(2)
    return {f"差值 {gap}": list(ns.compute_dpo_loss(zero + gap, zero, zero, zero, beta=1.0)) for gap in (-200.0, 200.0)}


def dpo_gradient(ns):
    """奖励只是拿来看的，不该带梯度。"""
    parts = [part.requires_grad_() for part in four(4)]
    loss, *rewards = ns.compute_dpo_loss(*parts)
    loss.backward()
    return {"选中的": parts[0].grad, "被拒的": parts[1].grad, "奖励带梯度": [reward.requires_grad for reward in rewards]}


def ipo_values(ns):
    return {f"tau = {tau}": ns.compute_ipo_loss(*four(), tau=tau) for tau in (0.02, 0.1, 1.0)} | {"默认的 tau": ns.compute_ipo_loss(*four(2))}


def ipo_target(ns):
    """差值正好是 1/(2τ)，损失是 0；再大就罚。"""
    import torch

    zero = torch.zeros(2)
    return {f"差值 {gap}": ns.compute_ipo_loss(zero + gap, zero, zero, zero, tau=0.1) for gap in (0.0, 5.0, 9.0)}


def simpo_values(ns):
    import torch

    chosen, rejected, *_ = four(5)
    lengths = torch.tensor([3, 5, 8, 2, 9, 4]), torch.tensor([7, 1, 6, 2, 4, 12])
    return {f"beta = {beta}，gamma = {gamma}": ns.compute_simpo_loss(chosen, rejected, *lengths, beta=beta, gamma=gamma) for beta, gamma in ((2.5, 1.0), (1.0, 0.0), (0.5, 3.0))} | {
        "默认的": ns.compute_simpo_loss(chosen, rejected, *lengths)
    }


# ── GRPO ──


def mask_values(ns):
    import torch

    answers = torch.tensor([[3, 9, 5, 2], [9, 9, 9, 9], [1, 2, 3, 4], [4, 4, 4, 9], [5, 9, 9, 1]])
    return {"结束词元是 9": ns.answer_mask(answers, 9), "结束词元是 4": ns.answer_mask(answers, 4)}


def advantage_values(ns):
    return {"随机的": ns.group_normalized_rewards(numbers(4, 6)), "两个一组": ns.group_normalized_rewards(numbers(3, 2, seed=2))}


def advantage_ties(ns):
    """全错、全对、都是 0.1 的：没有可比的，是 0，不是 nan，也不是舍入误差放大出来的数。"""
    import torch

    return {"全一样": ns.group_normalized_rewards(torch.tensor([[0.0] * 7, [1.0] * 7, [0.1] * 7])), "四个里对一个": ns.group_normalized_rewards(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))}


def advantage_alone(ns):
    return {"一组一个答案，报 ValueError": refused(ns.group_normalized_rewards, numbers(3, 1))}


def k3_values(ns):
    return {"随机的": ns.k3(numbers(3, 4), numbers(3, 4, seed=2)), "一样的": ns.k3(numbers(3, 4), numbers(3, 4))}


def k3_gradient(ns):
    now, ref = numbers(3, 4).requires_grad_(), numbers(3, 4, seed=2).requires_grad_()
    ns.k3(now, ref).sum().backward()
    return {"现在的": now.grad, "参考的带不带梯度": ref.grad is not None}


def grpo_inputs(seed=1):
    """四个答案，各 5 个词元。"""
    import torch

    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]).float()
    old = numbers(4, 5, seed=seed) - 2
    return old + numbers(4, 5, seed=seed + 1, scale=0.3), old, torch.tensor([1.5, -0.5, 0.7, -1.7]), mask


def grpo_values(ns):
    return {f"clip = {clip}": ns.compute_grpo_loss(*grpo_inputs(), clip=clip) for clip in (0.2, 0.05, 10.0)}


def grpo_gradient(ns):
    """走过了头的没有梯度，走反了的照样有；记下的旧概率不带梯度。"""
    logprobs, old, advantages, mask = grpo_inputs(3)
    logprobs.requires_grad_()
    old.requires_grad_()
    ns.compute_grpo_loss(logprobs, old, advantages, mask).backward()
    return {"现在的": logprobs.grad, "旧的带不带梯度": old.grad is not None}


def grpo_kl(ns):
    return {f"kl_coeff = {kl}": ns.compute_grpo_loss(*grpo_inputs(), ref_logprobs=numbers(4, 5, seed=9) - 2, kl_coeff=kl) for kl in (0.0, 0.05, 1.0)}


class Toy:
    """玩具模型：每个位置的 logits 只看到它为止的词元嵌入之和；缓存存的是嵌入。"""

    def __init__(self, size=12):
        self.cfg, self.table, self.rows = {"n_layers": 1}, numbers(size, 8, seed=5), []

    def __call__(self, ids, cache=None, last_only=False):
        import torch

        self.rows.append(list(ids.shape))
        keys = self.table[ids][:, None]
        if cache is not None:
            keys, _ = cache.update(0, keys, keys)
            cache.length += ids.shape[1]
        total = keys[:, 0].cumsum(dim=1)[:, -ids.shape[1] :] / torch.arange(1, keys.shape[2] + 1)[-ids.shape[1] :, None]
        return (total[:, -1:] if last_only else total) @ self.table.T


def toy_prompts(seed=3):
    import torch

    prompts = torch.randint(0, 12, (3, 6), generator=torch.Generator().manual_seed(seed))
    prompts[:, :3] = prompts[0, :3]  # 共有的开头是 3 个
    prompts[:, 3], prompts[:, 5] = torch.tensor([1, 2, 3]), 7  # 最后一个碰巧相同，不算共有
    return prompts


def cache_values(ns):
    cache = ns.SharedCache({"n_layers": 2})
    for layer in (0, 1):
        cache.update(layer, numbers(2, 1, 3, 4, seed=layer), numbers(2, 1, 3, 4, seed=layer + 5))
    cache.share(2)
    shared = list(cache.update(1, numbers(4, 1, 1, 4, seed=8), numbers(4, 1, 1, 4, seed=9)))
    import torch

    cache.keep(torch.tensor([True, False, False, True]))
    return {"分两份，再接一个": shared, "第 0 层留下": list(cache.layers[0]), "第 1 层留下": list(cache.layers[1])}


def cache_gradient(ns):
    """缓存里的也要能求梯度：两份答案的梯度加回同一道题。"""
    cache, keys = ns.SharedCache({"n_layers": 1}), numbers(2, 1, 3, 4).requires_grad_()
    cache.update(0, keys, keys)
    cache.share(3)
    both = cache.update(0, numbers(6, 1, 1, 4, seed=2), numbers(6, 1, 1, 4, seed=3))
    (both[0] * numbers(6, 1, 4, 4, seed=4) + both[1]).sum().backward()
    return {"梯度": keys.grad}


def prefill_values(ns):
    model = Toy()
    cache, logits = ns.prefill(model, toy_prompts(), 2)
    return {"logits": logits, "缓存": cache.layers[0][0], "长度": cache.length, "每次送进去的": model.rows}


def prefill_same(ns):
    """题目全一样，也要留一个词元送进去，才有 logits。"""
    import torch

    model = Toy()
    _, logits = ns.prefill(model, torch.tensor([[1, 2, 3], [1, 2, 3]]), 2)
    return {"logits": logits, "每次送进去的": model.rows}


def sequence_values(ns):
    import torch

    answers = torch.randint(0, 12, (6, 4), generator=torch.Generator().manual_seed(1))
    return {f"{m} 个词元": ns.sequence_logprob(Toy(), toy_prompts(), answers[:, :m]) for m in (4, 2, 1)}


def sample_greedy(ns):
    model = Toy()
    return {f"结束词元是 {eos}": list(ns.sample_response(model, toy_prompts(), 2, 5, eos, temperature=0)) for eos in (-1, 4, 7)}


def sample_rows(ns):
    """写完的行不再送进去；采样时记下的，就是温度 1 的对数概率。"""
    import torch

    torch.manual_seed(1)
    model = Toy()
    tokens, logprobs, _ = ns.sample_response(model, toy_prompts(), 4, 6, 3)
    rows = [int((tokens[:, :j] != 3).all(dim=1).sum()) for j in range(1, tokens.shape[1])]
    again = ns.sequence_logprob(Toy(), toy_prompts(), tokens) * ns.answer_mask(tokens, 3)
    return {"每步送进去几行，就是还没写完的几行": [size[0] for size in model.rows[2:]] == rows, "记下的与重算的相同": (again - logprobs).abs().max().item() < 1e-4, "写完后填的": bool((logprobs[ns.answer_mask(tokens, 3) == 0] == 0).all())}


def partial_values(ns):
    texts = ("1234", "The sum is 1,234.", "9234", "234", "11234", "1243", "no idea", "34 and then 1235")
    return {text: ns.partial_reward(text, "1234") for text in texts} | {"答案的个位是 0，什么也没写": ns.partial_reward("no idea", "90")}


# ── 几条标注配的岭回归 ──


def ridge_values(ns):
    x = numbers(9, 4, seed=3).double()
    answers = x[:, 0].sign()
    alpha, penalty, error = ns.learn(x @ x.T + 1, answers)
    return {"系数": alpha, "惩罚": penalty, "留一法的误差": error}


def ridge_noise(ns):
    """答案与 x 无关：留一法该选重的惩罚。"""
    x = numbers(12, 30, seed=4).double()
    _, penalty, error = ns.learn(x @ x.T + 1, numbers(12, seed=5).double().sign())
    return {"惩罚": penalty, "留一法的误差": error}


class Words:
    """一个空格分开一个词元。"""

    def __init__(self):
        self.names = {}

    def encode_ordinary(self, text):
        return [self.names.setdefault(word, len(self.names)) for word in text.split()]


def bag_values(ns):
    return {"词袋": ns.bag_of_words(["win a prize", "a cat a mat", "Win win WIN a"], Words()), "每条都有的词": ns.bag_of_words(["a b", "a c"], Words())}


def labelled_values(ns):
    import torch

    answers = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, 1.0, -1.0, -1.0, 1.0, 1.0])
    return {f"{count} 条，种子 {seed}": sorted(ns.labelled(range(2, 10), answers, count, seed)) for count in (2, 4, 6) for seed in (0, 1)}


DPO, GRPO, WORTH = "ch07/experiments/exp_dpo.py", "ch07/experiments/exp_grpo.py", "ch06/experiments/exp_pretraining_worth.py"

COMPONENTS = [
    dict(
        name="compute_logprobs",
        title="每句回答的对数概率",
        section="实验",
        source=DPO,
        parts=["compute_logprobs"],
        task="写函数 compute_logprobs(logits, labels, selection_mask)：logits (b, t, V) 是模型的输出，labels (b, t) 是送进模型的编号（没有右移），selection_mask (b, t) 里回答是 True。返回每句回答各个词元的对数概率之和，(b,)。位置 i 的 logits 猜的是第 i + 1 个词元。",
        blanks=["labels[:, 1:], selection_mask[:, 1:]", "logits[:, :-1].transpose(1, 2)", "(log_probs * mask).sum(dim=1)"],
        cases=[("数值", logprob_values), ("提示词和填充", logprob_outside), ("梯度", logprob_gradient)],
        mutants=[
            ("labels[:, 1:], selection_mask[:, 1:]", "labels[:, 1:], selection_mask[:, :-1]", "掩码没有跟着右移。回答的第一个词元丢了，最后多算一个填充。"),
            ("labels[:, 1:], selection_mask[:, 1:]", "labels[:, :-1], selection_mask[:, :-1]", "没有右移。位置 i 的 logits 猜的是第 i + 1 个，不是它自己。"),
            ("(log_probs * mask).sum(dim=1)", "log_probs.sum(dim=1)", "忘了掩码。提示词和填充也算进去了。"),
            ("(log_probs * mask).sum(dim=1)", "(log_probs * mask).sum(dim=1) / mask.sum(dim=1)", "取了平均。DPO 的推导里是整句的概率，要的是和。"),
            ("(log_probs * mask).sum(dim=1)", "(log_probs * mask).sum()", "整批加在了一起。每句回答各是一个数。"),
            ("-nn.functional.cross_entropy", "nn.functional.cross_entropy", "忘了负号。交叉熵是负的对数概率，差值的方向会反。"),
        ],
    ),
    dict(
        name="compute_dpo_loss",
        title="DPO 的损失",
        section="实验",
        source=DPO,
        parts=["compute_dpo_loss"],
        task="写函数 compute_dpo_loss(model_chosen_logprobs, model_rejected_logprobs, reference_chosen_logprobs, reference_rejected_logprobs, beta=0.1)：四个都是 (b,)。奖励是模型的减去参考的；损失是 −log σ(beta ×（选中的奖励 − 被拒的奖励）)，取平均。返回（损失，选中的奖励的平均，被拒的奖励的平均），奖励不带梯度，也不乘 beta。",
        blanks=["model_chosen_logprobs - reference_chosen_logprobs", "-nn.functional.logsigmoid(beta * (chosen_rewards - rejected_rewards))"],
        cases=[("数值", dpo_values), ("刚开始", dpo_start), ("差得很多", dpo_extreme), ("梯度", dpo_gradient)],
        mutants=[
            ("(chosen_rewards - rejected_rewards)", "(rejected_rewards - chosen_rewards)", "减反了。学的是被拒的。"),
            ("-nn.functional.logsigmoid(", "nn.functional.logsigmoid(", "忘了负号。越训练，被拒的越可能。"),
            ("beta * (chosen_rewards - rejected_rewards)", "(chosen_rewards - rejected_rewards) / beta", "该乘 beta，写成了除。beta 越大，越不许走远，不是相反。"),
            ("-nn.functional.logsigmoid(beta * (chosen_rewards - rejected_rewards))", "-torch.log(torch.sigmoid(beta * (chosen_rewards - rejected_rewards)))", "先 sigmoid 再 log。差得多时 sigmoid 是 0，log 就是负无穷。"),
            ("model_chosen_logprobs - reference_chosen_logprobs", "model_chosen_logprobs", "没有减去参考模型。本来就不像话的回答，怎么训练也显得不好。"),
            ("chosen_rewards.detach().mean()", "chosen_rewards.mean()", "奖励带着梯度。它只是拿来看的，留着会把整张计算图一直占在内存里。"),
        ],
    ),
    dict(
        name="compute_ipo_loss",
        title="IPO 的损失",
        section="实验",
        source=DPO,
        parts=["compute_ipo_loss"],
        task="写函数 compute_ipo_loss(model_chosen_logprobs, model_rejected_logprobs, reference_chosen_logprobs, reference_rejected_logprobs, tau=0.02)：四个都是 (b,)。差值是（选中的涨了多少）−（被拒的涨了多少），损失是（差值 − 1/(2·tau)）的平方，取平均，返回一个数。",
        blanks=["1 / (2 * tau)"],
        cases=[("数值", ipo_values), ("目标", ipo_target)],
        mutants=[
            ("1 / (2 * tau)", "1 / 2 * tau", "少了括号。1 / 2 * tau 是 tau 的一半。"),
            ("1 / (2 * tau)", "1 / tau", "目标大了一倍。推导里是 1/(2τ)。"),
            ("- model_rejected_logprobs + reference_rejected_logprobs", "- model_rejected_logprobs - reference_rejected_logprobs", "被拒的那一半符号错了。拆括号时，减去（模型 − 参考）是减模型、加参考。"),
            (") ** 2).mean()", ").abs()).mean()", "取了绝对值。IPO 是平方：离目标越远，拉得越用力。"),
            (").mean()", ").sum()", "没有取平均。批大一倍，步子就大一倍。"),
        ],
    ),
    dict(
        name="compute_simpo_loss",
        title="SimPO 的损失",
        section="实验",
        source=DPO,
        parts=["compute_simpo_loss"],
        task="写函数 compute_simpo_loss(model_chosen_logprobs, model_rejected_logprobs, chosen_lengths, rejected_lengths, beta=2.5, gamma=1.0)：四个都是 (b,)，长度是各有几个词元。损失是 −log σ(beta ×（选中的每词元对数概率 − 被拒的每词元对数概率）− gamma)，取平均，返回一个数。",
        blanks=["model_chosen_logprobs / chosen_lengths", "model_rejected_logprobs / rejected_lengths"],
        cases=[("数值", simpo_values)],
        mutants=[
            ("model_chosen_logprobs / chosen_lengths", "model_chosen_logprobs", "选中的没有除以长度。长的回答对数概率的和总是更小，光因为长就吃亏。"),
            ("model_rejected_logprobs / rejected_lengths", "model_rejected_logprobs / chosen_lengths", "用错了长度。各除以各自的。"),
            (" - gamma)", " + gamma)", "gamma 的符号反了。它要求多赢出一截，所以是减。"),
            ("-nn.functional.logsigmoid", "nn.functional.logsigmoid", "忘了负号。越训练，被拒的越可能。"),
            ("beta * (", "(", "忘了乘 beta。每词元的差只有零点几，不放大就几乎没有梯度。"),
        ],
    ),
    dict(
        name="answer_mask",
        title="答案里哪些词元算数",
        section="实验",
        source=GRPO,
        parts=["answer_mask"],
        task="写函数 answer_mask(answers, eos_id)：answers (n, m)。返回 (n, m) 的 1.0 或 0.0：到第一个 eos_id 为止（它自己也算）是 1，后面的是 0；没有 eos_id 的整行是 1。",
        blanks=["(answers == eos_id).int().cumsum(dim=1)", "(ended == 1) & (answers == eos_id)"],
        cases=[("数值", mask_values)],
        mutants=[
            ("(ended == 0) | ((ended == 1) & (answers == eos_id))", "(ended == 0)", "结束词元自己不算。它学不到什么时候停，越练越长。"),
            ("(ended == 0) | ((ended == 1) & (answers == eos_id))", "(ended <= 1)", "第一个结束词元后面的也算了。那里不是结束词元时，会一直算到第二个。"),
            ("(ended == 0) | ((ended == 1) & (answers == eos_id))", "(ended == 0) | (answers == eos_id)", "填上去的结束词元也算了。短的答案，大半的梯度来自填充。"),
            ("cumsum(dim=1)", "cumsum(dim=0)", "累加错了维。要沿着一句话从左到右数，不是一行一行地数。"),
        ],
    ),
    dict(
        name="group_normalized_rewards",
        title="GRPO 的优势",
        section="实验",
        source=GRPO,
        parts=["group_normalized_rewards"],
        task="写函数 group_normalized_rewards(rewards, eps=1e-6)：rewards (p, G)，一行是同一道题的 G 个答案。返回 (p, G)：（r − 组内平均）÷ 组内标准差（除以 G − 1 的那种）；标准差不超过 eps 的组全是 0。G 不到 2 时 ValueError。",
        blanks=["rewards.mean(dim=1, keepdim=True), rewards.std(dim=1, keepdim=True)", "std > eps"],
        cases=[("数值", advantage_values), ("全组一样", advantage_ties), ("一组一个", advantage_alone)],
        mutants=[
            ("torch.where(std > eps, (rewards - mean) / std.clamp(min=eps), 0.0)", "(rewards - mean) / std", "没有管标准差是 0 的组。0 ÷ 0 是 nan，一组就毁了整个模型。"),
            ("torch.where(std > eps, (rewards - mean) / std.clamp(min=eps), 0.0)", "(rewards - mean) / (std + 1e-12)", "只防了除以 0。舍入误差会让全是 0.1 的组标准差是 1e-9，相除就无中生有。"),
            ("rewards.mean(dim=1, keepdim=True), rewards.std(dim=1, keepdim=True)", "rewards.mean(), rewards.std()", "整批一起比了。难题的组会全是负的，容易的全是正的：学的成了挑题，不是答题。"),
            ("rewards.std(dim=1, keepdim=True)", "rewards.std(dim=1, keepdim=True, unbiased=False)", "标准差除以了 G。组小的时候，优势会偏大。"),
            ("(rewards - mean) / std.clamp(min=eps)", "rewards / std.clamp(min=eps)", "没有减平均。答错的得 0，不加也不减，只有答对的在推，方差大得多。"),
            ("if rewards.shape[1] < 2:", "if rewards.shape[1] < 1:", "一组一个答案也收下了。一个数没有标准差。"),
        ],
    ),
    dict(
        name="k3",
        title="KL 的估计",
        section="实验",
        source=GRPO,
        parts=["k3"],
        task="写函数 k3(logprobs, ref_logprobs)：同样形状的两份对数概率，现在的和参考模型的。令 r = 参考的概率 ÷ 现在的概率，返回 r − ln r − 1；参考的那份不带梯度。",
        blanks=["ref_logprobs.detach() - logprobs", "log_ratio.exp() - log_ratio - 1"],
        cases=[("数值", k3_values), ("梯度", k3_gradient)],
        mutants=[
            ("ref_logprobs.detach() - logprobs", "logprobs - ref_logprobs.detach()", "除反了。样本是现在的模型写的，r 要是参考的除以现在的，平均才是 KL。"),
            ("log_ratio.exp() - log_ratio - 1", "-log_ratio", "用了最朴素的估计（k1）。它有正有负，少数样本上会变成奖励离得远。"),
            ("log_ratio.exp() - log_ratio - 1", "log_ratio.exp() - 1 + log_ratio", "减写成了加。一样的两份仍是 0，别处就会是负的。"),
            ("log_ratio.exp() - log_ratio - 1", "log_ratio**2 / 2", "用了二次的近似（k2）。离得近时差不多，离得远就不是 KL 了。"),
            ("ref_logprobs.detach()", "ref_logprobs", "参考模型带着梯度。两边会一起动，拉住的就不是原来的模型。"),
        ],
    ),
    dict(
        name="compute_grpo_loss",
        title="GRPO 的损失",
        section="实验",
        source=GRPO,
        parts=["compute_grpo_loss"],
        needs=["k3"],
        task="写函数 compute_grpo_loss(logprobs, old_logprobs, advantages, mask, clip=0.2, ref_logprobs=None, kl_coeff=0.0)：logprobs、old_logprobs、mask 都是 (n, m)，advantages (n,)。概率比 = 现在的概率 ÷ 采样时的（采样时的不带梯度）；每个词元取「比 × 优势」与「截断到 1 ± clip 的比 × 优势」里小的；kl_coeff 不是 0 时再减 kl_coeff × k3(logprobs, ref_logprobs)；按 mask 对全部词元取平均，取负号，返回一个数。",
        blanks=["(logprobs - old_logprobs.detach()).exp()", "ratio.clamp(1 - clip, 1 + clip) * advantages", "-(gain * mask).sum() / mask.sum()"],
        cases=[("数值", grpo_values), ("梯度", grpo_gradient), ("KL", grpo_kl)],
        mutants=[
            ("torch.minimum(", "torch.maximum(", "取了大的。走过了头还接着推，截断就白写了。"),
            ("torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)", "ratio.clamp(1 - clip, 1 + clip) * advantages", "只留了截断的一项。走反了、走远了的，再也没有梯度把它拉回来。"),
            ("torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)", "ratio * advantages", "没有截断。同一批答案多用几次，就会一路推下去。"),
            ("-(gain * mask).sum() / mask.sum()", "(gain * mask).sum() / mask.sum()", "忘了负号。优化器把损失往小里推，好的答案反而越来越少。"),
            ("-(gain * mask).sum() / mask.sum()", "-gain.mean()", "填充也算了。短的答案被填充冲淡。"),
            ("-(gain * mask).sum() / mask.sum()", "-((gain * mask).sum(dim=1) / mask.sum(dim=1)).mean()", "先在每个答案里平均。这是 DeepSeekMath 的写法：长的答案每个词元分到的就少，写错了不如写得长；这里按全部词元平均。"),
            ("gain - kl_coeff * k3(", "gain + kl_coeff * k3(", "KL 的符号反了。成了奖励离原来的模型远。"),
            ("old_logprobs.detach()", "old_logprobs", "采样时的概率带着梯度。比恒为 1，两边的梯度正好抵消。"),
        ],
    ),
    dict(
        name="SharedCache",
        title="分得开的 KV 缓存",
        section="实验",
        source=GRPO,
        parts=["SharedCache"],
        task="写类 SharedCache(cfg)：layers 是 cfg[\"n_layers\"] 个 None，length 是 0。update(layer, keys, values)：把新的 (b, g, t, k) 接在这一层旧的后面（第 2 维），存起来，返回到现在为止的键和值。share(n)：每层的每一行变成紧挨着的 n 行。keep(rows)：rows (b,) 是 True 的行才留下。都要能求梯度（不改已有的张量）。",
        blanks=["part.repeat_interleave(n, dim=0)", "part[rows]"],
        cases=[("接、分、留", cache_values), ("梯度", cache_gradient)],
        mutants=[
            ("part.repeat_interleave(n, dim=0)", "part.repeat(n, 1, 1, 1)", "整批抄了 n 遍。同一道题的答案要挨着，这样第 1 道题的答案会读到第 2 道的题目。"),
            ("torch.cat([self.layers[layer][0], keys], dim=2)", "torch.cat([keys, self.layers[layer][0]], dim=2)", "新的接在了前面。位置全乱了。"),
            ("torch.cat([self.layers[layer][1], values], dim=2)", "torch.cat([self.layers[layer][0], values], dim=2)", "值的前面接上了键。形状对，数全错。"),
            ("self.layers[layer] = (keys, values)", "self.layers[layer] = self.layers[layer] or (keys, values)", "第二次起没有存。前面写过的词元，后面就看不见了。"),
            ("part[rows]", "part[~rows]", "留反了。写完的还在算，没写完的扔了。"),
        ],
    ),
    dict(
        name="prefill",
        title="读题：共有的只算一遍",
        section="实验",
        source=GRPO,
        parts=["prefill"],
        needs=["SharedCache"],
        task="写函数 prefill(model, prompts, group_size)：prompts (p, t) 一样长。model(ids, cache, last_only=True) 返回最后一个位置的 logits (行数, 1, V)，并把 ids 记进 cache。先用第一行算所有题共有的开头（只算一行；最多到倒数第二个词元），cache.share(p)；再算每道题剩下的，cache.share(group_size)。返回（cache，每个答案的 logits，(p·G, 1, V)）。cache 用 SharedCache(model.cfg) 造；没有共有的开头就一次算完。",
        blanks=["(prompts == prompts[0]).all(dim=0).int().cumprod(dim=0).sum()", "logits.repeat_interleave(group_size, dim=0)"],
        cases=[("数值", prefill_values), ("题目全一样", prefill_same)],
        mutants=[
            (".cumprod(dim=0).sum()", ".sum()", "后面碰巧相同的也数进去了。共有的开头，到第一个不同的为止。"),
            ("logits.repeat_interleave(group_size, dim=0)", "logits.repeat(group_size, 1, 1)", "logits 与缓存的次序不一样了。第 1 道题的答案，第一个词元是按第 2 道题抽的。"),
            ("prompts[:, common:]", "prompts[:, common - 1 :]", "共有的最后一个词元算了两遍。后面的位置全差一格。"),
            ("prompts[:1, :common]", "prompts[:, :common]", "共有的开头每一行都算了。再 share，就成了 p × p 行。"),
            ("    cache.share(group_size)\n", "", "没有分给 G 个答案。缓存只有 p 行，答案有 p·G 个。"),
        ],
    ),
    dict(
        name="sequence_logprob",
        title="答案里每个词元的对数概率",
        section="实验",
        source=GRPO,
        parts=["sequence_logprob"],
        needs=["SharedCache", "prefill"],
        task="写函数 sequence_logprob(model, prompts, answers)：prompts (p, t)，answers (n, m)，同一道题的 G = n ÷ p 个挨着。用 prefill(model, prompts, G) 得到缓存和第一个词元的 logits (n, 1, V)；第 j 个词元看第 j − 1 个位置的 logits，所以把答案（最后一个词元不用）送进 model(ids, cache)，接在后面。返回每个词元的对数概率，(n, m)；m 是 1 时不必再送。",
        blanks=["answers[:, :-1]", "torch.log_softmax(logits.float(), dim=-1).gather(2, answers[:, :, None])"],
        cases=[("数值", sequence_values)],
        mutants=[
            ("answers[:, :-1]", "answers[:, 1:]", "差了一格。第 1 个词元的概率，成了看着第 2 个算的；形状对，一处也不报错。"),
            ("torch.cat([logits, model(answers[:, :-1], cache)], dim=1)", "torch.cat([model(answers[:, :-1], cache), logits], dim=1)", "接反了。题目最后一个位置的 logits，猜的是第一个词元。"),
            ("torch.log_softmax(logits.float(), dim=-1)", "torch.softmax(logits.float(), dim=-1)", "没有取对数。概率比要靠对数相减。"),
            ("len(answers) // len(prompts)", "1", "没有分给 G 个答案。缓存的行数与答案对不上。"),
            ("if answers.shape[1] > 1:", "if answers.shape[1] > 2:", "两个词元的也当成一个了。只有一个词元时，才不必再送。"),
        ],
    ),
    dict(
        name="sample_response",
        title="采样一组答案",
        section="实验",
        source=GRPO,
        parts=["sample_response"],
        needs=["SharedCache", "prefill", "sequence_logprob", "answer_mask"],
        task="写函数 sample_response(model, prompts, group_size, max_new_tokens, eos_id, temperature=1.0)，不求梯度：用 prefill 读题，一个词元一个词元地写；temperature 是 0 时贪心，否则按 logits ÷ temperature 抽。写到 eos_id 的行不再算（cache.keep），后面填 eos_id；全写完就停。返回（答案，抽中的词元的对数概率（温度 1 的），每一步的熵），都是 (n, m)，填的地方对数概率和熵是 0。",
        blanks=["torch.multinomial(torch.softmax(logits[:, -1] / temperature, dim=-1), 1)", "chosen[:, 0] != eos_id", "cache.keep(going)"],
        cases=[("贪心", sample_greedy), ("写完的行", sample_rows)],
        mutants=[
            ("writing = writing[going]", "writing = writing", "没有划掉写完的行。后面的词元会写进别人的那一行，或对不上行数。"),
            ("model(chosen[going], cache)", "model(chosen, cache)", "写完的也送进去了。缓存已经没有它们的行。"),
            ("        cache.keep(going)  # 写完的行不再算：长短差得多时，省下一半的力气\n", "", "缓存没有跟着划掉。行数对不上。"),
            ("-(logp.exp() * logp).sum(dim=-1)", "(logp.exp() * logp).sum(dim=-1)", "熵的符号反了。熵不小于 0。"),
            ("torch.full(shape, eos_id)", "torch.zeros(shape, dtype=torch.long)", "后面填了 0。填 eos_id，answer_mask 才认得哪里是结尾。"),
            ("tokens[:, : j + 1]", "tokens[:, : j]", "少了最后一个。j 从 0 数，写了 j + 1 个。"),
        ],
    ),
    dict(
        name="partial_reward",
        title="按位给部分分",
        section="实验",
        source=GRPO,
        parts=["partial_reward"],
        task="写函数 partial_reward(text, answer)：取 text 里最后一个整数（先去掉逗号；没有就是空的），从个位起与 answer（一串数字）逐位比，返回相同的位数 ÷ 两者中较长的位数。",
        blanks=["zip(reversed(numbers[-1]), reversed(answer))", "max(len(numbers[-1]), len(answer))"],
        cases=[("数值", partial_values)],
        mutants=[
            ("zip(reversed(numbers[-1]), reversed(answer))", "zip(numbers[-1], answer)", "从最高位比了。少写一位，后面全错开。"),
            ("/ max(len(numbers[-1]), len(answer))", "/ len(answer)", "多写的位不罚。在前面加一串数字，也是满分。"),
            ("numbers[-1]), reversed(answer)", "numbers[0]), reversed(answer)", "看的是第一个数。它往往是题目里的，最后一个才是答案。"),
            ('text.replace(",", "")', "text", "没有去掉逗号。「1,234」成了 1 和 234 两个数。"),
            ('or [""]', 'or ["0"]', "没有数的当成了 0。答案的个位是 0 时，什么也没写也得分。"),
        ],
    ),
    dict(
        name="bag_of_words",
        title="词袋（TF-IDF）",
        section="实验",
        source=WORTH,
        parts=["bag_of_words"],
        task="写函数 bag_of_words(texts, tokenizer)：每条先变小写，tokenizer.encode_ordinary 得到词元，只记出现过哪些（出现几次都算一次）。第 j 列乘 ln(条数 ÷ 有这个词元的条数)，每行再缩放到长度 1。列按词元编号从小到大，返回 (n, w)。",
        blanks=["set(tokenizer.encode_ordinary(text.lower()))", "math.log(len(texts)) - found.sum(dim=0).log()"],
        cases=[("数值", bag_values)],
        mutants=[
            ("text.lower()", "text", "没有变小写。WIN 和 win 成了两个词。"),
            ("math.log(len(texts)) - found.sum(dim=0).log()", "found.sum(dim=0).log() - math.log(len(texts))", "减反了。少见的词成了负的。"),
            ("math.log(len(texts)) - found.sum(dim=0).log()", "len(texts) / found.sum(dim=0)", "忘了取对数。只出现一次的词会压过所有别的。"),
            ("nn.functional.normalize(found, dim=1)", "nn.functional.normalize(found, dim=0)", "缩放错了维。每条短信缩放到长度 1，长短才不影响。"),
            ("found.sum(dim=0)", "found.sum(dim=1, keepdim=True)", "数的是每条有几个词。要数的是每个词在几条里出现。"),
        ],
    ),
    dict(
        name="learn",
        title="岭回归与留一法",
        section="实验",
        source=WORTH,
        parts=["learn"],
        extra={"PENALTIES": WORTH},
        task="写函数 learn(kernel, answers)：kernel (m, m) 是标注过的两两的相似程度，answers (m,) 是 +1 或 −1。对 PENALTIES 里的每个惩罚，alpha = (kernel + 惩罚 × I)⁻¹ · answers；留一法的误差，每条是 alpha ÷ 逆矩阵的对角线，平方取平均。返回误差最小的（alpha，惩罚，误差）；一样小时取先试的。",
        blanks=["penalty * torch.eye(len(kernel), dtype=kernel.dtype)", "(alpha / inverse.diagonal()).square().mean().item()", "error < best[2]"],
        cases=[("数值", ridge_values), ("没有规律", ridge_noise)],
        mutants=[
            ("alpha / inverse.diagonal()", "answers - kernel @ alpha", "用学过的题考自己。惩罚越轻，学过的越记得牢，总是选最轻的。"),
            ("alpha / inverse.diagonal()", "alpha * inverse.diagonal()", "该除的写成了乘。公式的分母是逆矩阵的对角线。"),
            ("error < best[2]", "error > best[2]", "选了误差最大的。"),
            ("torch.linalg.inv(kernel + penalty", "torch.linalg.inv(kernel - penalty", "惩罚的符号反了。矩阵可能不再可逆。"),
            (".square().mean()", ".mean()", "没有平方。正负会抵消，误差显得是 0。"),
        ],
    ),
    dict(
        name="labelled",
        title="标注几条，两类各一半",
        section="实验",
        source=WORTH,
        parts=["labelled"],
        task="写函数 labelled(train, answers, count, seed)：train 是训练集的序号（range），answers 是全部的答案（+1 或 −1）。用 np.random.RandomState(seed).permutation 打乱训练集，−1 和 +1 的各取前 count // 2 条，返回序号的列表。",
        blanks=["np.random.RandomState(seed).permutation(len(train))", "count // 2"],
        cases=[("数值", labelled_values)],
        mutants=[
            ("[train[i] for i in np.random.RandomState(seed).permutation(len(train))]", "[int(i) for i in np.random.RandomState(seed).permutation(len(train))]", "忘了换回序号。抽到的是从 0 数的，训练集不从 0 开始时就抽错了。"),
            ("[: count // 2]", "[: count]", "每类都取了 count 条。多标注了一倍，比较就不公平。"),
            ("for sign in (-1, 1)", "for sign in (1, 1)", "只取了一类。两类都要有，才分得出。"),
            ("RandomState(seed)", "RandomState(0)", "种子没有用上。抽十次，十次都一样。"),
        ],
    ),
]
