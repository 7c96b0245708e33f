"""打分与挑选的组件：奖励模型的损失、从 n 个里挑、投票、覆盖率、ROUGE-L、kappa、平均查准率、校准误差、连成组、计算器

怎么写一项，见 setup/practice.md「加一个组件」。这里不在顶层导入 torch：列清单要立刻。
"""


def numbers(*shape, seed=1, scale=1.0):
    """一份固定的随机数。"""
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


# ── 奖励模型 ──


def reward_values(ns):
    return {f"第 {seed} 份": ns.compute_reward_loss(numbers(5, seed=seed, scale=3), numbers(5, seed=seed + 9, scale=3)) for seed in (1, 2)} | {"一样的": ns.compute_reward_loss(numbers(4), numbers(4))}


def reward_extreme(ns):
    import torch

    return {f"差 {gap}": ns.compute_reward_loss(torch.tensor([gap, gap]), torch.zeros(2)) for gap in (-200.0, 200.0)}


def best_values(ns):
    """8 个里取 n 个，与把每一种取法都试一遍的平均相同。"""
    scores, rewards = numbers(3, 8, seed=3), numbers(3, 8, seed=4)
    return {f"n = {n}": ns.best_of_n(scores, rewards, n) for n in (1, 2, 3, 7, 8)}


def best_large(ns):
    return {"600 个里取 300 个": ns.best_of_n(numbers(2, 600, seed=5), numbers(2, 600, seed=6), 300)}


# ── 挑一遍 ──


def vote_values(ns):
    rounds = {"多数": ["12", "12", "7"], "并列": ["12", "7", "7", "12", "3"], "并列，对的后出现": ["7", "12", "12", "7"], "弃权的多": [None, None, None, "12"], "全弃权": [None, None], "错的多": ["7", "7", "12"], "一遍": ["12"]}
    return {name: ns.vote(answers, "12") for name, answers in rounds.items()}


def pass_values(ns):
    return {f"{m} 遍对 {right} 遍，取 {n} 遍": ns.pass_at_n(right, m, n) for right, m, n in ((0, 8, 4), (8, 8, 1), (1, 8, 1), (1, 8, 8), (3, 16, 4), (3, 16, 14), (5, 10, 2))}


# ── 尺子 ──


def rouge_values(ns):
    pairs = [("the cat sat", "the cat sat"), ("The CAT, sat!", "the cat sat"), ("cat the sat", "the cat sat"), ("the big cat sat down", "the cat sat"), ("no", "the cat sat"), ("", "the"), ("", ""), ("a a a", "a")]
    return {f"{one!r} 与 {other!r}": ns.rouge_l(one, other) for one, other in pairs}


def kappa_values(ns):
    rows = {"全一致": ([True, False, True, True], [True, False, True, True]), "全相反": ([True, False], [False, True]), "碰巧": ([True, True, False, False], [True, False, True, False]), "一边全对": ([True] * 4, [True, False, True, True]), "两边全对": ([True] * 3, [True] * 3)}
    return {name: ns.kappa(*pair) for name, pair in rows.items()} | {"偏的": ns.kappa([True] * 8 + [False] * 2, [True] * 7 + [False, True, False])}


def precision_values(ns):
    import torch

    labels = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 0, 0])
    return {"随机的": ns.average_precision(numbers(10, seed=7), labels), "全排在前面": ns.average_precision(labels.float(), labels), "全排在后面": ns.average_precision(-labels.float(), labels)}


def precision_ties(ns):
    """同分的要么都进，要么都不进：一律同分，就是垃圾短信的比例。"""
    import torch

    labels = torch.tensor([1, 0, 0, 1, 0, 0, 0, 0, 0, 1])
    return {"一律同分": ns.average_precision(torch.zeros(10), labels), "两种分数": ns.average_precision(torch.tensor([1.0] * 4 + [0.0] * 6), labels), "曲线": list(ns.precision_recall_curve(torch.tensor([2.0, 2, 1, 1, 0, 0, 0, 0, 0, -1]), labels))}


def calibration_values(ns):
    import torch

    probs = torch.sigmoid(numbers(60, seed=8, scale=2))
    labels = (torch.sigmoid(numbers(60, seed=9)) < probs).long()
    return {"误差": ns.expected_calibration_error(probs, labels), "各格": list(ns.calibration_bins(probs, labels)), "五格": list(ns.calibration_bins(probs, labels, 5))}


def calibration_edges(ns):
    import torch

    return {"0 和 1 都有格子": list(ns.calibration_bins(torch.tensor([0.0, 1.0, 0.1, 0.999]), torch.tensor([0, 1, 1, 1]))), "说得正好": ns.expected_calibration_error(torch.full((4,), 0.25), torch.tensor([0, 0, 1, 0]))}


# ── 连成组、计算器 ──


def group_values(ns):
    import random

    found = {"一串": ns.groups({(0, 1), (1, 2), (2, 3)}, 5), "两组": ns.groups({(3, 4), (0, 2), (4, 6)}, 7), "没有": ns.groups(set(), 3), "先连长的一串，再接上别的": ns.groups([(5, 6), (4, 5), (3, 4), (1, 3), (2, 9), (6, 9)], 10)}
    rng = random.Random(1)
    for number in range(6):
        pairs = {tuple(sorted(rng.sample(range(12), 2))) for _ in range(7)}
        found[f"随机 {number}"] = sorted(ns.groups(pairs, 12))
    return found


def calculate_values(ns):
    return {text: ns.calculate(text) for text in ("12+30*4", "(2+3)*4", "3-10", " 7 * 8 ", "999*999", "1+2-3*4")}


def calculate_refuses(ns):
    bad = ("__import__('os')", "9**9", "7/2", "a+1", "True+1", "1.5*2", "'a'*3", "1,2", "", "1+", "-5", "(" * 99, "1+" * 30 + "1", "9999999999+1", "0x10*1", "1_000*2", "1+1#x")
    return {text[:20]: ns.calculate(text) == ns.REFUSED for text in bad}


REWARD, SAMPLING, EVALUATION = "ch07/experiments/exp_reward_model.py", "ch07/experiments/exp_reasoning_sampling.py", "ch07/experiments/exp_evaluation.py"
IMBALANCE, DUPLICATES, TOOL = "ch06/experiments/exp_imbalance.py", "ch07/experiments/exp_near_duplicates.py", "ch07/experiments/exp_tool_use.py"

COMPONENTS = [
    dict(
        name="compute_reward_loss",
        title="奖励模型的损失",
        section="实验",
        source=REWARD,
        parts=["compute_reward_loss"],
        task="写函数 compute_reward_loss(chosen, rejected)：两边的分数 (b,)，返回 −log σ(选中的 − 被拒的) 的平均，一个数；差得很多也不能溢出。",
        blanks=["nn.functional.logsigmoid(chosen - rejected)"],
        cases=[("数值", reward_values), ("差得很多", reward_extreme)],
        mutants=[
            ("chosen - rejected", "rejected - chosen", "减反了。学的是被拒的。"),
            ("-nn.functional.logsigmoid", "nn.functional.logsigmoid", "忘了负号。越训练，被拒的分数越高。"),
            ("-nn.functional.logsigmoid(chosen - rejected)", "-torch.log(torch.sigmoid(chosen - rejected))", "先 sigmoid 再 log。差得多时 sigmoid 是 0，log 就是负无穷。"),
            (".mean()", ".sum()", "没有取平均。批大一倍，步子就大一倍。"),
        ],
    ),
    dict(
        name="best_of_n",
        title="从 n 个里挑最高的",
        section="实验",
        source=REWARD,
        parts=["best_of_n"],
        task="写函数 best_of_n(scores, rewards, n)：都是 (p, m)。每道题从 m 个里随便取 n 个（每一种取法机会相同），挑 scores 最高的，返回它的 rewards 的平均，(p,)，不抽样，用公式：按 scores 从低到高排，第 i 个（从 1 数）被挑中的概率是 C(i−1, n−1) / C(m, n)；用 torch.lgamma 算，m 是几百也不能溢出。",
        blanks=["scores.argsort(dim=1)", "rewards.gather(1, order)", "(rank >= n)"],
        cases=[("数值", best_values), ("很多个", best_large)],
        mutants=[
            ("rewards.gather(1, order)", "rewards", "没有按分数排。挑的与分数无关。"),
            ("scores.argsort(dim=1)", "scores.argsort(dim=1, descending=True)", "排反了。挑的成了最低的。"),
            ("* (rank >= n)", "", "排在 n 名以内的也算了。取 n 个，最高的至少是第 n 名。"),
            ("* n / m", "/ m", "少乘了 n。概率加起来不是 1。"),
            ("(rank - n).clamp(min=0) + 1", "(rank - n).clamp(min=0)", "阶乘差了一。lgamma(x + 1) 才是 ln x!。"),
        ],
    ),
    dict(
        name="vote",
        title="多数票",
        section="实验",
        source=SAMPLING,
        parts=["vote"],
        task="写函数 vote(answers, truth)：answers 是每一遍的答案（文字，看不出的是 None，算弃权），truth 是正确答案。票数最多的答案对，返回 1.0；k 个答案并列最多，正确的在里面，返回 1/k；否则、或全弃权，返回 0.0。用 Counter 数票。",
        blanks=["answer for answer in answers if answer is not None", "count == max(counts.values())", "float(truth in best)"],
        cases=[("数值", vote_values)],
        mutants=[
            ("if answer is not None", "if True", "弃权的也算一票。答不出来的多，答案就成了「答不出来」。"),
            ("/ max(len(best), 1)", "", "并列时记了满分。随便挑一个，对的机会只有几分之一。"),
            ("float(truth in best)", "float(best[:1] == [truth])", "并列时只看第一个。谁先出现，不该要紧。"),
            ("count == max(counts.values())", "count > 1", "留下了所有多于一票的。要的是最多的。"),
        ],
    ),
    dict(
        name="pass_at_n",
        title="覆盖率 pass@n",
        section="实验",
        source=SAMPLING,
        parts=["pass_at_n"],
        task="写函数 pass_at_n(right, m, n)：m 遍里对了 right 遍，从里面随便取 n 遍（不放回），至少有一遍对的概率，float：1 − C(m − right, n) / C(m, n)。",
        blanks=["(m - right - i) / (m - i)"],
        cases=[("数值", pass_values)],
        mutants=[
            ("float(np.prod([(m - right - i) / (m - i) for i in range(n)]))", "(1 - right / m) ** n", "放回去再抽了。同一遍会数几次，平均起来偏低。"),
            ("(m - right - i) / (m - i)", "(m - right) / (m - i)", "错的没有越取越少。取走一遍错的，剩下的错的就少一遍。"),
            ("1.0 - ", "", "算成了全错的概率。"),
            ("range(n)", "range(1, n)", "少取了一遍。"),
        ],
    ),
    dict(
        name="rouge_l",
        title="ROUGE-L",
        section="实验",
        source=EVALUATION,
        parts=["rouge_l"],
        task="写函数 rouge_l(prediction, reference)：两段文字各取小写的 [a-z0-9]+ 当词，求最长公共子序列的长度 L（次序相同，可以隔开），返回 2L ÷（两边词数之和）；两边都空是 0。",
        blanks=["word == other", "max(row[j], above[j + 1])"],
        cases=[("数值", rouge_values)],
        mutants=[
            ("max(row[j], above[j + 1])", "0", "成了最长公共子串。中间隔开的词就不算了。"),
            ("max(row[j], above[j + 1])", "row[j]", "没有看上一行。跳过一个词，前面的就白数了。"),
            ("text.lower()", "text", "没有变小写。"),
            ("2 * above[-1] / max(len(a) + len(b), 1)", "above[-1] / max(len(b), 1)", "只算了召回率。写得越长，分数越高。"),
            ("above[j] + 1 if word == other", "above[j + 1] + 1 if word == other", "一个词用了两次。左上角那一格，才是两边都还没用到它的时候。"),
        ],
    ),
    dict(
        name="kappa",
        title="Cohen 的 kappa",
        section="实验",
        source=EVALUATION,
        parts=["kappa"],
        task="写函数 kappa(a, b)：两把尺子各自判的对错，list[bool]，一样长。一致的比例是 agree；各判各的，碰巧也会一致的比例是 luck = x·y + (1−x)(1−y)，x、y 是各自判对的比例。返回 (agree − luck) ÷ (1 − luck)；luck 是 1 时返回 0.0。",
        blanks=["x * y + (1 - x) * (1 - y)", "(agree - luck) / (1 - luck)"],
        cases=[("数值", kappa_values)],
        mutants=[
            ("(agree - luck) / (1 - luck)", "agree", "碰巧一致的也算了。两把都九成判对的尺子，闭着眼睛也有八成一致。"),
            ("(agree - luck) / (1 - luck)", "agree - luck", "没有除以最多能多出的。全一致也到不了 1。"),
            ("x * y + (1 - x) * (1 - y)", "x * y", "只数了一起判对的。一起判错，也是碰巧一致。"),
            ("if luck < 1 else 0.0", "if luck < 1 else 1.0", "两边全对时给了 1。分不出碰巧，就没有证据。"),
        ],
    ),
    dict(
        name="average_precision",
        title="平均查准率",
        section="实验",
        source=IMBALANCE,
        parts=["precision_recall_curve", "average_precision"],
        task="写两个函数。precision_recall_curve(scores, labels)：(n,) 的分数和 0/1 的答案，界线从高到低，每一种不同的分数一处（同分的一起进），返回查准率、查全率，各 (m,)。average_precision(scores, labels)：Σ (Rₖ − Rₖ₋₁)·Pₖ，返回 float。",
        blanks=["labels[order].cumsum(0)", "scores[1:] != scores[:-1]", "recall.diff(prepend=torch.zeros(1))"],
        cases=[("数值", precision_values), ("同分的", precision_ties)],
        mutants=[
            ("scores.sort(descending=True)", "scores.sort()", "从低到高排了。最不像的排在了最前面。"),
            ("torch.cat([scores[1:] != scores[:-1], torch.tensor([True])])", "torch.ones(len(labels), dtype=torch.bool)", "同分的拆开了。一律同分也有了次序，全看谁先写进文件。"),
            ("hits / hits[-1]", "hits / len(labels)", "查全率除错了。分母是一共有几条要找的。"),
            ("recall.diff(prepend=torch.zeros(1))", "recall", "没有取差。每一处都从头再数一遍，会超过 1。"),
            ("hits / torch.arange(1, len(labels) + 1)", "hits / torch.arange(len(labels)).clamp(min=1)", "前 i 名，分母是 i。从 0 数就偏高。"),
        ],
    ),
    dict(
        name="expected_calibration_error",
        title="期望校准误差",
        section="实验",
        source=IMBALANCE,
        parts=["calibration_bins", "expected_calibration_error"],
        task="写两个函数。calibration_bins(probs, labels, count=10)：(n,) 的概率和 0/1 的答案，概率按 0 到 1 平均分成 count 格（1.0 算最后一格），返回每格的条数、平均说的概率、真的比例，都是 (count,) 的 float64，空的格是 0。expected_calibration_error(probs, labels)：十格里 |说的 − 真的| 按条数加权平均，float。",
        blanks=["(probs * count).long().clamp(max=count - 1)", "size * (said - true).abs()"],
        cases=[("数值", calibration_values), ("两头", calibration_edges)],
        mutants=[
            (".clamp(max=count - 1)", ".clamp(max=count)", "1.0 没有格子放。"),
            ("size * (said - true).abs()", "(said - true).abs()", "没有按条数加权。只有一条的格，与一千条的一样重。"),
            ("size * (said - true).abs()", "size * (said - true)", "忘了取绝对值。这一格高估，那一格低估，会抵消。"),
            ("true / size.clamp(min=1)", "true", "没有除以条数。得到的是几条，不是几成。"),
            ("/ len(probs)", "/ 10", "除以了格数。"),
        ],
    ),
    dict(
        name="groups",
        title="把像的连成组",
        section="实验",
        source=DUPLICATES,
        parts=["groups"],
        task="写函数 groups(pairs, count)：pairs 是 (i, j)，i < j，都小于 count。连着的是一组（甲像乙、乙像丙，甲乙丙就是一组），返回两条以上的组，每组从小到大，大的组在前；一样大的，含最小编号的在前。",
        blanks=["leader[max(find(i), find(j))] = min(find(i), find(j))", "len(group) > 1"],
        cases=[("数值", group_values)],
        mutants=[
            ("leader[max(find(i), find(j))] = min(find(i), find(j))", "leader[j] = i", "只改了这一条，没有改整组。先连好的一串会断开。"),
            ("while leader[i] != i:", "if leader[i] != i:", "只往上找了一步。隔了几层的，找不到同一个头。"),
            ("len(group) > 1", "len(group) > 2", "漏了两条的组。"),
            ("reverse=True", "reverse=False", "小的排在了前面。"),
        ],
    ),
    dict(
        name="calculate",
        title="只认整数和 + − × 的计算器",
        section="实验",
        source=TOOL,
        parts=["calculate"],
        extra={"REFUSED": TOOL, "OPERATIONS": TOOL},
        task="写函数 calculate(expression)：expression 是别人写的文字，最多 40 个字符，只许有数字、+ * ( ) - 和空格。只有整数（小于 10⁹）和 OPERATIONS 里的运算（+ − ×）、括号，才算，返回得数的文字；其余一律返回 REFUSED。不用 eval：用 ast.parse(…, mode=\"eval\") 拆成语法树，自己走。",
        blanks=["[0-9+*() -]+", "node.value < 10**9", "type(node.op) in OPERATIONS", "len(expression) > 40"],
        cases=[("数值", calculate_values), ("不该算的", calculate_refuses)],
        mutants=[
            ("[0-9+*() -]+", "[0-9A-Za-z_+*() -]+", "字母、下划线也放进来了。0x10、1_000、True 在 Python 里都是整数。"),
            ("re.fullmatch", "re.match", "只看了开头。1+1#x 的后半没有查。"),
            (" and node.value < 10**9", "", "没有管大小。说好只收小于 10⁹ 的数。"),
            ("type(node.op) in OPERATIONS", "True", "没有查是哪种运算。认不得的会报 KeyError，整个程序停下。"),
            ("len(expression) > 40", "False", "没有管长短。嵌套上万层的括号，光是拆就会把解释器弄垮。"),
            ("(ValueError, SyntaxError, RecursionError, MemoryError)", "ValueError", "写错的算式会让程序停下。模型什么都写得出来。"),
        ],
    ),
]
