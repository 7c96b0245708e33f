"""TF-IDF 与逻辑回归；把 LoRA 加进权重得到一个新的模型，两段话从第几个词元起分岔

怎么写一项，见 setup/practice.md「加一个组件」。这里不在顶层导入 torch：列清单要立刻。
"""

LARGER, PAGE = "ch06/experiments/exp_larger_dataset.py", "ch07/experiments/exp_instruction_page.py"


def counted():
    """三条训练的，一条没见过的；有的词一条里出现几次。"""
    from collections import Counter

    texts = ["dull plot dull", "fine plot", "fine cast fine plot dull", "a cast of odd odd words"]
    counts = [Counter(text.split()) for text in texts]
    return counts[:3], counts


def vocabulary_values(ns):
    words, idf = ns.learn_vocabulary(counted()[0])
    return {"词表": list(words), "第几列": list(words.values()), "IDF": idf}


def tfidf_values(ns):
    import torch

    seen, counts = counted()
    words = {"cast": 0, "dull": 1, "fine": 2, "plot": 3}
    x = ns.tfidf(counts, words, torch.tensor([1.7, 1.3, 1.2, 1.0], dtype=torch.float64)).to_dense()
    return {"每条": x, "长度": x.norm(dim=1)}


def logistic_problem(n, w, seed):
    import torch

    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, w, generator=generator, dtype=torch.float64)
    return x, torch.where(x[:, 0] + 0.8 + torch.randn(n, generator=generator, dtype=torch.float64) > 0, 1.0, -1.0).double()


def logistic_values(ns):
    """权重只看三位小数：走到最低点就行，走法可以不同。"""
    found = {}
    for strength in (0.1, 10.0):
        weight, bias = ns.fit_logistic(*logistic_problem(40, 3, 1), strength)
        found[f"C = {strength}"] = [weight.mul(1000).round() / 1000, round(float(bias), 3)]
    return found


def logistic_choice(ns):
    (x, answers), (valid, valid_answers) = logistic_problem(20, 12, 1), logistic_problem(200, 12, 2)
    easy, _ = logistic_problem(10, 1, 3)
    easy = easy.sign() * 3
    return {
        "挑中的 C": ns.best_logistic(x, answers, valid, valid_answers, (1e-4, 0.01, 1.0, 100.0))[2],
        "一样好": ns.best_logistic(easy, easy[:, 0].sign(), easy, easy[:, 0].sign(), (0.1, 1.0, 10.0))[2],
    }


def parted_values(ns):
    from types import SimpleNamespace as column

    first = column(tokens=[5, 6, 7])
    cases = {"相同": [5, 6, 7], "第二个": [5, 9, 7], "短一个": [5, 6], "长一个": [5, 6, 7, 8], "一个也没有": []}
    return {name: str(ns.parted(column(tokens=tokens), first)) for name, tokens in cases.items()}


COMPONENTS = [
    dict(
        name="learn_vocabulary",
        title="TF-IDF 的词表和 IDF",
        section="实验",
        source=LARGER,
        parts=["learn_vocabulary"],
        task="写一个函数 learn_vocabulary(counts)：counts 是训练集里每一条的 Counter（词 → 次数）。返回词表（词 → 第几列，按字母排）和每一列的 IDF，ln((1 + n) / (1 + df)) + 1，df 是这个词在几条里出现过，float64，(w,)。",
        blanks=["Counter(chain.from_iterable(counts))", "math.log((1 + len(counts)) / (1 + found[term])) + 1"],
        cases=[("词表", vocabulary_values)],
        mutants=[
            (
                "Counter(chain.from_iterable(counts))",
                "sum(counts, Counter())",
                "数的是一共出现几次，不是在几条里出现过：一条里说了两遍的词，被当成了更常见的。",
            ),
            ("/ (1 + found[term])) + 1", "/ (1 + found[term]))", "少了加 1：条条都有的词，IDF 成了 0，整列都不算了。"),
            ("(1 + len(counts)) / (1 + found[term])", "len(counts) / found[term]", "没有平滑。scikit-learn 默认上下各加 1，好像多看了一条什么词都有的。"),
            ("(1 + len(counts)) / (1 + found[term])", "(1 + found[term]) / (1 + len(counts))", "上下反了：越少见的词越轻，还成了负的。"),
            ("sorted(found)", "found", "没有排序：词表的次序随数据变，两次训练的列就对不上。"),
        ],
    ),
    dict(
        name="tfidf",
        title="TF-IDF",
        section="实验",
        source=LARGER,
        parts=["tfidf"],
        task="写一个函数 tfidf(counts, vocabulary, idf)：每条一行，次数 × IDF，再缩放到长度（L2）1；词表里没有的词不算。返回稀疏的张量（torch.sparse_coo_tensor，合并过），(n, w)，float64。",
        blanks=["times * idf[columns]", "index_add(0, rows, values.square()).sqrt()", "values / lengths[rows]"],
        cases=[("每条一行", tfidf_values)],
        mutants=[
            ("values = times * idf[columns]", "values = idf[columns]", "没有乘次数：说了三遍与说一遍一样。"),
            ("values = times * idf[columns]", "values = times.double()", "没有乘 IDF：常见的词与少见的一样重，成了普通的词袋。"),
            ("values / lengths[rows]", "values", "没有缩放到长度 1：长的影评，每个数都大，分数也大。"),
            ("values.square()).sqrt()", "values)", "除的是各个数的和（L1），不是长度（L2）。"),
            ("lengths[rows]", "lengths.max()", "都除以最长的那一条：短的影评长度不到 1。"),
        ],
    ),
    dict(
        name="fit_logistic",
        title="逻辑回归",
        section="实验",
        source=LARGER,
        parts=["fit_logistic"],
        task="写一个函数 fit_logistic(x, answers, strength)：用 L-BFGS（torch.optim.LBFGS）找到让 ½‖权重‖² + C · Σ ln(1 + e^(−答案 · 分数)) 最小的权重和偏置，C 是 strength，偏置不罚，都从 0 起。x 是 (n, w)，稀疏的也行；answers 是 +1 或 −1，(n,)。返回权重，float64，(w,)，和偏置，一个 float。",
        blanks=["0.5 * weight.square().sum()", "nn.functional.softplus(-answers * scores).sum()"],
        cases=[("最低点", logistic_values)],
        mutants=[
            ("softplus(-answers * scores)", "softplus(answers * scores)", "正负号反了：学的正好相反，一处也不报错。"),
            ("softplus(-answers * scores).sum()", "softplus(-answers * scores).mean()", "取了平均：数据多一倍，惩罚就相对重一倍，同一个 C 管的不是同一件事。"),
            ("0.5 * weight.square().sum()", "0.5 * (weight.square().sum() + bias.square().sum())", "偏置也罚了：两类一样多时看不出，不一样多时界线就偏了。"),
            ("strength * nn.functional", "nn.functional", "没有乘 C。"),
            (
                "0.5 * weight.square().sum() + strength *",
                "0.5 * strength * weight.square().sum() +",
                "C 乘错了地方：大的 C 成了重的惩罚，与 scikit-learn 相反。",
            ),
        ],
    ),
    dict(
        name="best_logistic",
        title="在验证集上挑惩罚",
        section="实验",
        source=LARGER,
        parts=["best_logistic"],
        needs=["fit_logistic"],
        task="写一个函数 best_logistic(x, answers, valid_x, valid_answers, penalties)：每种 C（从小到大）用 fit_logistic 学一次，返回在验证集上对得最多的那一次的（权重，偏置，C）；一样多，取惩罚重的。",
        blanks=["valid_x @ fit[0][:, None]", "(valid_answers > 0)"],
        cases=[("挑哪一个", logistic_choice)],
        mutants=[
            ("return max(fits", "return min(fits", "挑成了最差的。"),
            ("for strength in penalties]", "for strength in reversed(penalties)]", "一样好时取了惩罚轻的：max 遇到并列取第一个，次序就是偏好。"),
            (
                "(valid_x @ fit[0][:, None])[:, 0] + fit[1]) > 0) == (valid_answers > 0)",
                "(x @ fit[0][:, None])[:, 0] + fit[1]) > 0) == (answers > 0)",
                "在训练集上挑：惩罚越轻，训练集上对得越多，总是挑中最轻的。",
            ),
            ("fit_logistic(x, answers, strength)", "fit_logistic(x, answers, penalties[0])", "每次用的都是同一种惩罚，后面记的却是另一种。"),
        ],
    ),
    dict(
        name="parted",
        title="从第几个词元起分岔",
        section="实验",
        source=PAGE,
        parts=["parted"],
        task="写一个函数 parted(column, first)：两列各有 tokens（列表）。返回从第几个词元起不同，从 1 数；一列先写完，也算从那里起不同；完全相同是 None。",
        blanks=["zip([*column.tokens, None], [*first.tokens, None])"],
        cases=[("分岔", parted_values)],
        mutants=[
            (
                "zip([*column.tokens, None], [*first.tokens, None])",
                "zip(column.tokens, first.tokens)",
                "短的那列写完了，zip 就停了：一列是另一列的开头，被当成完全相同。",
            ),
            ("start=1", "start=0", "从 0 数了。"),
            ("if pair[0] != pair[1]", "if pair[0] == pair[1]", "找的是第一个相同的。"),
            ("pair[0] != pair[1]), None)", "pair[0] != pair[1]), 0)", "完全相同应返回 None；0 会被当成一个位置。"),
        ],
    ),
]
