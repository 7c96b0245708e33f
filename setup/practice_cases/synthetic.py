"""蒸馏与造数据的组件：蒸馏的损失、只存最大的 k 个、Magpie 的开头、筛子

怎么写一项，见 setup/practice.md「加一个组件」。这里不在顶层导入 torch：列清单要立刻。
"""


def numbers(*shape, seed=1, scale=1.0):
    """一份固定的随机数。"""
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


# ── 蒸馏 ──


def kd_values(ns):
    student, teacher = numbers(2, 3, 6, seed=1, scale=2), numbers(2, 3, 6, seed=2, scale=2).log_softmax(dim=-1)
    return {f"T = {temperature}": ns.kd_loss(student, teacher, temperature) for temperature in (1.0, 2.0, 5.0)} | {
        "一样的": ns.kd_loss(teacher + 3, teacher, 2.0)
    }


def kd_gradients(ns):
    import torch

    student, teacher = numbers(2, 3, 6, seed=3).requires_grad_(), numbers(2, 3, 6, seed=4).requires_grad_()
    grads = torch.autograd.grad(ns.kd_loss(student, teacher.log_softmax(dim=-1), 2.0), (student, teacher), allow_unused=True)
    return {"学生的": grads[0], "老师没有": grads[1] is None or not bool(grads[1].any())}


def kd_zeros(ns):
    import torch

    return {"老师说不可能的": ns.kd_loss(numbers(1, 2, 4, seed=5), torch.tensor([[[0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]]).log())}


def compress_values(ns):
    logprobs = numbers(2, 3, 9, seed=6, scale=2).log_softmax(dim=-1)
    return {f"k = {k}，{rest}": ns.compress(logprobs, k, rest).exp() for k in (1, 3, 8) for rest in ("扔掉", "平分")}


def compress_all(ns):
    logprobs = numbers(2, 5, seed=7).log_softmax(dim=-1)
    return {"全存": ns.compress(logprobs, 5, "平分").exp()}


# ── 造数据 ──


def toy_tokenizer():
    """一个字节一个词元，外加两个特殊词元。"""
    import tiktoken

    return tiktoken.Encoding(
        "bytes", pat_str=r"[\s\S]", mergeable_ranks={bytes([i]): i for i in range(256)}, special_tokens={"<|im_start|>": 256, "<|im_end|>": 257}
    )


def header_values(ns):
    ids = ns.magpie_header(toy_tokenizer())
    return {"解码回来": toy_tokenizer().decode(ids), "特殊词元": [i for i in ids if i > 255], "编号": ids}


def made(instruction, output="Yes, it is.", done=True, **more):
    return {"instruction": instruction, "input": "", "output": output, "done": done, **more}


def sift_values(ns):
    entries = [
        made("What is the tallest mountain on earth?"), made("what is the TALLEST mountain, on earth"), made("What is the tallest mountain on the earth?"),
        made("Please add these: 12 + 30, thank you.", "It is 42."), made("Please add these: 12 + 31, thank you.", "It is 43."), made("Please add these: 12 + 32, thank you.", "It is 45."),
        made("Name three colours you like", done=False), made("Name two"), made("word " * 200), made("Name five colours you like", ""),
        made("Name seven colours \ufffd please"), made("请 写 一首 诗 谢谢", "床前明月光"), made("1 2 3", "6"),
    ]  # fmt: skip
    return {"被哪一道拦下": ns.sift(entries)}


def sift_order(ns):
    """毛病不止一个的，算在第一道；被拦下的，后来的同样的题不算与它重复。"""
    entries = [
        made("短", "\ufffd", done=False),
        made("What is 3 + 4 in your head?", "8"),
        made("What is 3 + 4 in your head?", "7"),
        made("What is 3 + 4 in your head?", "7"),
        made("Which word is the plural of ox?", "oxes", answer="oxen"),
    ]
    return {"被哪一道拦下": ns.sift(entries)}


DISTILLATION, GENERATION, NEAR = "ch07/experiments/exp_distillation.py", "ch07/experiments/exp_dataset_generation.py", "ch07/experiments/exp_near_duplicates.py"
COMPONENTS = [
    dict(
        name="kd_loss",
        title="蒸馏的损失",
        section="实验",
        source=DISTILLATION,
        parts=["kd_loss"],
        task="写函数 kd_loss(student_logits, teacher_logprobs, temperature=1.0)：学生的 logits、老师的对数概率，都是 (b, t, V)。两边都除以 T 再 softmax，求 KL(p‖q)，p 是老师的，每个位置在 V 上求和，取平均，乘 T²，返回一个数。老师不要梯度；老师给概率 0（−∞）的，算作 0，不能是 nan。",
        blanks=["(teacher_logprobs.detach() / temperature).softmax(dim=-1)", "(student_logits / temperature).log_softmax(dim=-1)", "torch.xlogy(teacher, teacher) - teacher * student"],
        cases=[("数值", kd_values), ("梯度", kd_gradients), ("概率是 0 的", kd_zeros)],
        mutants=[
            ("temperature**2 * divergence", "divergence", "少了 T²。梯度小了 T² 倍，与文字的损失混着用，老师几乎不起作用。"),
            ("(student_logits / temperature)", "student_logits", "温度只除了老师一边。学生与老师一模一样，损失也不是 0。"),
            ("(torch.xlogy(teacher, teacher) - teacher * student)", "(student.exp() * student - torch.xlogy(student.exp(), teacher.clamp(min=1e-9)))", "KL 反了。学生只要咬住老师的一个高峰，别的可能都不必管。"),
            ("teacher_logprobs.detach()", "teacher_logprobs", "老师也有了梯度。它会来迁就学生。"),
            ("torch.xlogy(teacher, teacher)", "teacher * teacher.log()", "0 × ln 0 成了 nan。"),
            ("divergence.mean()", "divergence.sum()", "没有取平均。批大一倍，步子就大一倍。"),
        ],
    ),
    dict(
        name="compress",
        title="一个分布只存最大的 k 个",
        section="实验",
        source=DISTILLATION,
        parts=["compress"],
        task="写函数 compress(logprobs, k, rest)：对数概率 (…, V)，只留最大的 k 个，返回对数概率 (…, V)。rest 是「扔掉」：没有留的是 −∞，留下的放大到概率加起来是 1；「平分」：留下的不变，其余一共占的概率平分给没有留的（至少 1e-9，k 等于 V 时不能除以 0）。",
        blanks=["logprobs.topk(k, dim=-1)", "values.log_softmax(dim=-1)", "1 - values.exp().sum(dim=-1, keepdim=True)"],
        cases=[("数值", compress_values), ("全存", compress_all)],
        mutants=[
            ("values.log_softmax(dim=-1)", "values", "没有再归一化。扔掉了一些，加起来就不到 1。"),
            ("max(logprobs.shape[-1] - k, 1)", "logprobs.shape[-1]", "分给了所有的词元。只分给没有留的 V − k 个。"),
            ("(1 - values.exp().sum(dim=-1, keepdim=True))", "(1 - values.exp().sum(dim=-1, keepdim=True) * 0)", "其余的占了整个 1。留下的已经占去了大半。"),
            ("logprobs.topk(k, dim=-1)", "logprobs.topk(k, dim=-1, largest=False)", "留了最小的。"),
            ('if rest == "扔掉"', 'if rest == "平分"', "两种办法对调了。"),
        ],
    ),
    dict(
        name="magpie_header",
        title="Magpie 的开头",
        section="实验",
        source=GENERATION,
        parts=["magpie_header"],
        needs=["encode_chat"],
        extra={"SYSTEM": "ch05/experiments/exp_real_llm.py", "VOCAB_SIZE": "ch05/experiments/exp_real_llm.py"},
        task="写函数 magpie_header(tokenizer)，返回词元编号的列表：系统提示是 SYSTEM 的一整句（用 encode_chat，不轮到助手），再加 <|im_start|> 和 “user\\n”，到此为止：模型的下一句就是用户会说的话。",
        blanks=['[start, *tokenizer.encode_ordinary("user\\n")]'],
        cases=[("数值", header_values)],
        mutants=[
            ('tokenizer.encode_ordinary("user\\n")', 'tokenizer.encode_ordinary("assistant\\n")', "轮到助手说了。没有题，它会自己客套一番。"),
            ("answer=False", "answer=True", "系统提示后面多了“助手：”。角色写了两遍，与训练时见过的不同。"),
            ('encode_ordinary("user\\n")', 'encode_ordinary("user")', "少了换行。模型先要补一个换行，才轮到题。"),
            ("[start, *tokenizer", "[*tokenizer", "少了 <|im_start|>。user 只是一个普通的词，不是换人说话。"),
        ],
    ),
    dict(
        name="sift",
        title="指令数据的筛子",
        section="实验",
        source=GENERATION,
        parts=["sift"],
        extra={name: GENERATION for name in ("WORDS", "SIMILAR", "digits", "garbled", "right", "known_answer")} | {name: NEAR for name in ("GRAM", "normalize", "shingles", "jaccard")},
        task="写函数 sift(entries)：每条有 instruction、output、done。返回一个列表，每条是拦住它的第一道筛子的名字，留下的是 None。依次：没写完（done 是假）、太短太长（instruction、output 按空白切开的词数，不在 WORDS 里）、乱码、重复（garbled，题和回答用空格接起来看）、不是英文（其中的字母，英文的不到九成）、答案不对（known_answer 不是 None，而 right 说不对）、完全重复（normalize 过的题与留下的某一条相同）、几乎重复（片段的 jaccard 不小于 SIMILAR，而且 digits 也相同）。",
        blanks=["normalize(entry[\"instruction\"])", "kept.append(text)"],
        cases=[("数值", sift_values), ("次序", sift_order)],
        mutants=[
            (" and digits(text) == digits(other)", "", "数不同的题也当成重复的。12 + 30 与 12 + 31 字面很像，却是两道题。"),
            ("            kept.append(text)\n", "", "留下的没有记。后面的就没有可比的，一条重复也查不出来。"),
            ("        reasons.append(reason)\n", "        kept.append(text)\n        reasons.append(reason)\n", "被拦下的也记了。一条答错的，会把后来答对的同一道题也拦下。"),
            ("normalize(entry[\"instruction\"])", "entry[\"instruction\"]", "没有先归一化。大小写、标点不同，就不算重复了。"),
            ("if answer is not None and not right(entry[\"output\"], answer)", "if answer is not None and right(entry[\"output\"], answer)", "对错反了。拦下的正是答对的。"),
            ("low <= len(entry[key].split()) <= high", "len(entry[key].split()) <= high", "只管太长。空着的回答也留下了。"),
        ],
    ),
]  # fmt: skip
