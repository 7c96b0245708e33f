"""手敲练习 · 第 6 章　每个组件的任务、检查和典型错误

格式与怎样添加，见 setup/practice.md。检查函数只拿到一个 ns：被检查的文件里定义的一切，用 ns.名字 取。
"""

import contextlib
import csv
import io
import tempfile
from pathlib import Path


class CharTokenizer:
    """一个字符一个词元的假分词器，用法与 tiktoken 相同：特殊词元没有得到允许就报错。"""

    chars = "\n" + "".join(map(chr, range(32, 127)))  # 换行和 95 个看得见的英文字符，编号 0–95

    def encode(self, text, allowed_special=(), disallowed_special="all"):
        """文本 → 编号。"""
        if "<|endoftext|>" in text and disallowed_special == "all":
            raise ValueError("特殊词元没有得到允许")
        return [self.chars.index(char) for char in text]


def refused(work, error=ValueError):
    """应当被拒绝的输入：得到异常的名字；没有拒绝，就得到结果。别的异常照样往外抛，报告才说得出在哪一行。"""
    try:
        return work()
    except error as problem:
        return f"抛出 {type(problem).__name__}"


def quietly(work):
    """运行一下，不让进度条和打印的内容露出来。"""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return work()


def cpu():
    """CPU 设备。"""
    import torch

    return torch.device("cpu")


def tiny_classifier(drop=0.0, vocab=97, width=8, length=12):
    """极小的分类器：每个位置取它和左边的平均，再算两类的分数；seen 记下每次前向时的模式和输入的形状。"""
    import torch
    from torch import nn

    class TinyClassifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.tok_emb, self.pos_emb = nn.Embedding(vocab, width), nn.Embedding(length, width)
            self.drop_emb, self.out_head = nn.Dropout(drop), nn.Linear(width, 2)
            self.seen, self.inputs = [], []

        def forward(self, idx):
            self.seen.append(("训练模式" if self.training else "评估模式", "记梯度" if torch.is_grad_enabled() else "不记梯度"))
            self.inputs.append(idx)
            steps = torch.arange(idx.shape[1], device=idx.device)
            x = self.drop_emb(self.tok_emb(idx) + self.pos_emb(steps))  # (b, t, d)
            return self.out_head(x.cumsum(dim=1) / (steps + 1)[:, None])  # (b, t, 2)

    torch.manual_seed(123)
    return TinyClassifier()


def spam_batches(sizes, t=6):
    """几批随机的（短信，标签）。"""
    import torch

    generator = torch.Generator().manual_seed(7)
    return [(torch.randint(0, 97, (b, t), generator=generator), torch.randint(0, 2, (b,), generator=generator)) for b in sizes]


def messages(ham, spam):
    """若干条短信，两类混在一起，正文各不相同。"""
    rows = [("ham", f"ham {i}") for i in range(ham)] + [("spam", f"spam {i}") for i in range(spam)]
    return rows[::2] + rows[1::2]


# ---- create_balanced_dataset、random_split ----
def balanced(ns):
    """两类一样多，抽到的与原书（pandas）相同。"""
    import numpy as np

    rows = messages(12, 5)
    np.random.seed(7)  # 之前用过多少随机数，不应影响结果
    result = ns.create_balanced_dataset(rows)
    return {"结果": [tuple(row) for row in result], "原来的没有变": rows == messages(12, 5)}


def balanced_edges(ns):
    """垃圾短信更多、一样多、只有一类。"""
    make = lambda ham, spam: refused(lambda: [tuple(row) for row in ns.create_balanced_dataset(messages(ham, spam))])  # noqa: E731
    return {"垃圾短信更多": make(3, 7), "一样多": make(4, 4), "没有垃圾短信": make(3, 0), "没有正常短信": make(0, 3)}


def split_parts(ns):
    """三份的内容：打乱过，不重不漏。"""
    rows = messages(11, 9)
    train, validation, test = ns.random_split(rows, 0.7, 0.1)
    return {"训练集": train, "验证集": validation, "测试集": test, "不重不漏": sorted(train + validation + test) == sorted(rows), "原来的没有变": rows == messages(11, 9)}


def split_sizes(ns):
    """不能整除时各有几条；与之前用过多少随机数无关。"""
    import numpy as np

    result = {}
    for n, fractions in {17: (0.7, 0.1), 10: (0.25, 0.25), 13: (0.5, 0.3)}.items():
        np.random.seed(n)
        result[f"{n} 条"] = [len(part) for part in ns.random_split(messages(n, 0), *fractions)]
    return result


# ---- SpamDataset ----
TEXTS = [(0, "Hello"), (1, "WIN a prize now"), (0, ""), (1, "<|endoftext|>")]


def spam_dataset(ns, rows, *options, **named):
    """把几条短信写成 CSV，再建数据集；样本在读的时候就分好了词，文件随后可以删掉。"""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.csv"
        with open(path, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("Label", "Text"), *rows])
        return ns.SpamDataset(path, CharTokenizer(), *options, **named)


def spam_samples(ns):
    """填充到最长的那么长；标签变成编号。"""
    dataset = spam_dataset(ns, TEXTS[:3], pad_token_id=96)
    return {"样本数": len(dataset), "长度": dataset.max_length, "样本": [tuple(dataset[i]) for i in range(len(dataset))]}


def spam_length(ns):
    """给了 max_length：短的填充，长的截断。"""
    result = {}
    for length in (3, 8, 20):
        dataset = spam_dataset(ns, TEXTS[:2], max_length=length, pad_token_id=96)
        result[f"max_length={length}"] = [dataset[i][0] for i in range(2)]
    return result


def spam_special(ns):
    """默认用 50256 填充；正文里写着 <|endoftext|> 或换行时，当普通的字。"""
    dataset = spam_dataset(ns, [*TEXTS, (0, 'two "quoted"\nlines')])
    return {"填充": dataset[0], "普通的字": dataset[3], "换行": dataset[4]}


def spam_batch(ns):
    """能被 DataLoader 凑成批。"""
    from torch.utils.data import DataLoader

    inputs, labels = next(iter(DataLoader(spam_dataset(ns, TEXTS[:3], pad_token_id=96), batch_size=3)))
    return {"输入": inputs, "标签": labels}


# ---- add_classification_head ----
def small_gpt():
    """GPTModel 的骨架，名字与第 4 章的相同。"""
    import torch
    from torch import nn

    torch.manual_seed(5)
    model = nn.Module()
    model.tok_emb, model.pos_emb = nn.Embedding(9, 4), nn.Embedding(6, 4)
    model.trf_blocks = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model.final_norm, model.out_head = nn.LayerNorm(4), nn.Linear(4, 9, bias=False)
    return model


def head_shape(ns):
    """新的输出层：形状、初始的数。"""
    result = {}
    for name, options in {"默认": {}, "三类": {"num_classes": 3}}.items():
        model = small_gpt()
        ns.add_classification_head(model, **options)
        result[name] = dict(model.out_head.state_dict())
    return result


def head_frozen(ns):
    """哪些参数参加训练；别的参数原样不动。"""
    model = small_gpt()
    ns.add_classification_head(model)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return {"参加训练": trained, "词嵌入没有变": model.tok_emb.weight.detach(), "最后一块没有变": model.trf_blocks[-1].weight.detach()}


# ---- calc_accuracy_loader、calc_loss_batch ----
def accuracy_values(ns):
    """准确率；每批大小不同；只看前几批。"""
    batches = spam_batches([3, 3, 1])
    result = {name: ns.calc_accuracy_loader(batches, tiny_classifier(), cpu(), num_batches=wanted) for name, wanted in {"全部": None, "前两批": 2, "要的比有的多": 9}.items()}
    result["一批都没有"] = ns.calc_accuracy_loader([], tiny_classifier(), cpu())
    return result


def accuracy_modes(ns):
    """评估时关掉 dropout，不记梯度。"""
    import torch

    model = tiny_classifier(drop=0.9)
    model.train()
    torch.manual_seed(5)
    return {"准确率": ns.calc_accuracy_loader(spam_batches([8, 8, 8]), model, cpu()), "每次前向时": model.seen}


def accuracy_device(ns):
    """输入搬到指定的设备上；用会记账的假输入来查。"""
    moved = []

    class Watched:
        def __init__(self, tensor, name):
            self.tensor, self.name = tensor, name

        def to(self, device):
            moved.append((self.name, str(device)))
            return self.tensor

    batches = [(Watched(inputs, "短信"), Watched(labels, "标签")) for inputs, labels in spam_batches([2])]
    return {"准确率": ns.calc_accuracy_loader(batches, tiny_classifier(), cpu()), "搬了": sorted(moved)}


def class_loss(ns):
    """损失的数值：一批、一个样本、只有一个词元。"""
    import torch

    result = {}
    for name, (b, t) in {"4 × 6": (4, 6), "一个样本": (1, 6), "只有一个词元": (3, 1)}.items():
        model, (inputs, labels) = tiny_classifier(), spam_batches([b], t)[0]
        result[name] = loss = ns.calc_loss_batch(inputs, labels, model, cpu())
        by_hand = -torch.log_softmax(model(inputs)[:, -1], dim=-1)[torch.arange(b), labels].mean()
        result[f"{name}，与手算的相同"] = bool(abs(loss - by_hand) < 1e-5)
    return result


def class_gradient(ns):
    """带着计算图，反向之后每个参数都有梯度。"""
    model, (inputs, labels) = tiny_classifier(), spam_batches([4])[0]
    ns.calc_loss_batch(inputs, labels, model, cpu()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def class_device(ns):
    """输入和标签都搬到指定的设备上；用只记形状的假设备 meta 来查。"""
    import torch

    seen = []

    def model(idx):
        seen.append(idx.device.type)
        return torch.zeros(*idx.shape, 2, device="meta")  # (b, t, 2)

    loss = ns.calc_loss_batch(*spam_batches([2])[0], model, torch.device("meta"))
    return {"模型收到的输入在": seen, "损失在": loss.device.type}


# ---- train_classifier_simple ----
def make_loader():
    """7 条短信，一批 2 条，最后一批只有 1 条。"""
    from torch.utils.data import DataLoader, TensorDataset

    return DataLoader(TensorDataset(*spam_batches([7])[0]), batch_size=2)


def spy_optimizer(model, log):
    """会记账的 SGD：每走一步，记下当时输出层梯度的大小。"""
    import torch

    class SpySGD(torch.optim.SGD):
        def step(self, closure=None):
            log.append(None if model.out_head.weight.grad is None else model.out_head.weight.grad.norm().item())
            return super().step(closure)

    return SpySGD(model.parameters(), lr=0.5)


def train(ns, model, optimizer, epochs=2):
    """微调两轮，每 3 步评估一次，每次看 2 批。"""
    return quietly(lambda: ns.train_classifier_simple(model, make_loader(), spam_batches([3, 3, 3]), optimizer, cpu(), epochs, 3, 2))


def train_steps(ns):
    """每一步的梯度、训练后的权重、返回的五样。"""
    model, log = tiny_classifier(), []
    train_losses, val_losses, train_accs, val_accs, examples_seen = train(ns, model, spy_optimizer(model, log))
    return {
        "每一步的梯度": log,
        "训练之后的输出层": model.out_head.weight.detach(),
        "训练损失": train_losses,
        "验证损失": val_losses,
        "训练准确率": train_accs,
        "验证准确率": val_accs,
        "看过的样本数": examples_seen,
    }


def train_modes(ns):
    """算准确率会切换到评估模式，下一轮要切换回来。"""
    import torch

    model = tiny_classifier(drop=0.5)
    torch.manual_seed(5)
    train(ns, model, torch.optim.SGD(model.parameters(), lr=0.5), epochs=3)
    return {"记梯度的前向，都在": [mode for mode, grad in model.seen if grad == "记梯度"], "训练之后的输出层": model.out_head.weight.detach()}


# ---- classify_review ----
def review_inputs(ns):
    """模型收到的输入：填充、截断、超过上下文长度。"""
    result = {}
    for name, (text, options) in {
        "不填充": ("Hello", {}),
        "填充到 8": ("Hello", {"max_length": 8, "pad_token_id": 96}),
        "截断到 3": ("Hello", {"max_length": 3, "pad_token_id": 96}),
        "超过上下文长度": ("Hello, dear friend", {"pad_token_id": 96}),
        "要填充得比上下文还长": ("Hello", {"max_length": 30, "pad_token_id": 96}),
        "写着特殊词元": ("<|endof", {"pad_token_id": 96}),
    }.items():
        model = tiny_classifier()
        ns.classify_review(text, model, CharTokenizer(), cpu(), **options)
        result[name] = model.inputs
    return result


def review_answers(ns):
    """几条短信的判断，全是文字。"""
    answers = []
    for word in ["hi", "WIN", "free cash", "dinner?", "call now", "ok"]:
        answers.append(ns.classify_review(word, tiny_classifier(), CharTokenizer(), cpu(), max_length=10, pad_token_id=96))
    return {"判断": answers, "各自": sorted(set(answers))}


def review_modes(ns):
    """关掉 dropout，不记梯度；正文里写着 <|endoftext|> 时不报错。"""
    model = tiny_classifier(drop=0.5).train()
    ns.classify_review("<|endoftext|>", model, CharTokenizer(), cpu(), max_length=8)
    return {"每次前向时": model.seen, "输入": model.inputs}


COMPONENTS = [
    dict(
        name="create_balanced_dataset",
        title="让两类一样多",
        section="6.2",
        source="ch06/main",
        parts=["create_balanced_dataset"],
        needs=[],
        extra={},
        task="写一个函数 create_balanced_dataset(rows)，rows 是许多（标签，正文），标签是 \"ham\" 或 \"spam\"。少的那一类有 n 条：ham 用 np.random.RandomState(123).permutation(条数) 打乱序号，取前 n 个；spam 按原来的次序取前 n 条。返回 ham 在前、spam 在后的列表；只有一类时报 ValueError。",
        blanks=['row[0] == "ham"', "not ham or not spam", "min(len(ham), len(spam))", "np.random.RandomState(123).permutation(len(ham))", "shuffled[:n]"],
        cases=[("平衡之后", balanced), ("边界", balanced_edges)],
        mutants=[
            ("shuffled[:n]]", "shuffled]", "没有只取前 n 个，ham 一条也没有少，两类还是不一样多。"),
            ("[ham[i] for i in shuffled[:n]]", "ham[:n]", "没有随机抽，取的是文件里排在前面的 n 条；它们可能是同一段时间、同一批人写的。"),
            ("np.random.RandomState(123).permutation", "np.random.permutation", "没有自己的种子，抽到哪些取决于之前用过多少随机数，没法重现，也与原书对不上。"),
            ("np.random.RandomState(123)", "np.random.default_rng(123)", "用了新式的发生器：种子相同，次序也不同；pandas 的 sample 用的是旧式的 RandomState。"),
            ("min(len(ham), len(spam))", "len(spam)", "以为 ham 总是多的那一类；spam 更多时，抽出来的两类就不一样多。"),
            ("not ham or not spam", "not ham and not spam", "只有两类都没有才报错；应当缺一类就报，一类数据学不会分辨。"),
        ],
    ),
    dict(
        name="random_split",
        title="切成三份",
        section="6.2",
        source="ch06/main",
        parts=["random_split"],
        needs=[],
        extra={},
        task="写一个函数 random_split(rows, train_frac, validation_frac)：先用 np.random.RandomState(123).permutation 打乱（不要改动传进来的列表），再按比例切成训练集、验证集，剩下的是测试集，条数用 int 取整；返回这三个列表。",
        blanks=["np.random.RandomState(123).permutation(len(rows))", "int(len(rows) * train_frac)", "train_end + int(len(rows) * validation_frac)", "rows[train_end:validation_end]"],
        cases=[("三份", split_parts), ("条数", split_sizes)],
        mutants=[
            ("rows = [rows[i] for i in np.random.RandomState(123).permutation(len(rows))]", "rows = list(rows)", "没有打乱：数据里两类分在前后，测试集会全是同一类。"),
            ("rows = [rows[i] for i in np.random.RandomState(123).permutation(len(rows))]", "np.random.RandomState(123).shuffle(rows)", "用 shuffle 就地打乱了传进来的列表，外面的数据也跟着变了。"),
            ("np.random.RandomState(123).permutation", "np.random.permutation", "没有自己的种子，次序取决于之前用过多少随机数，每次切出来的都不同。"),
            ("train_end + int(len(rows) * validation_frac)", "int(len(rows) * validation_frac)", "验证集的终点忘了加上训练集的条数：终点在起点前面，验证集是空的，测试集里混进了训练数据。"),
            ("rows[validation_end:]", "rows[train_end:]", "测试集从训练集之后就开始，把验证集也包括进去了；用来挑模型的数据，不能再拿来算最后的成绩。"),
            ("rows[:train_end], rows[train_end:validation_end], rows[validation_end:]", "rows[:train_end], rows[validation_end:], rows[train_end:validation_end]", "验证集和测试集返回的次序反了。"),
        ],
    ),
    dict(
        name="SpamDataset",
        title="短信数据集",
        section="6.3",
        source="ch06/main",
        parts=["SpamDataset"],
        needs=[],
        extra={},
        task="写一个 Dataset 的子类 SpamDataset(csv_file, tokenizer, max_length=None, pad_token_id=50256)，csv_file 有 Label（0 或 1）和 Text 两列，用 csv.DictReader 读成列表，存在 self.data。用 tokenizer.encode(正文, disallowed_special=()) 分词；max_length 是 None 时取最长的那条的长度，否则太长的截断；短的在末尾填充 pad_token_id。"
        "self.encoded_texts、self.max_length 存起来。第 index 个样本是两个 torch.long 的张量：编号 (t,) 和标签 ()；_longest_encoded_length() 返回最长的那条有几个词元。",
        blanks=["list(csv.DictReader(file))", "disallowed_special=()", "self._longest_encoded_length()", "encoded_text[: self.max_length]", "[pad_token_id] * (self.max_length - len(encoded_text))", 'int(self.data[index]["Label"])', "max(len(encoded_text) for encoded_text in self.encoded_texts)"],
        cases=[("样本", spam_samples), ("长度", spam_length), ("特殊词元", spam_special), ("凑成批", spam_batch)],
        mutants=[
            ("encoded_text + [pad_token_id] * (self.max_length - len(encoded_text))", "[pad_token_id] * (self.max_length - len(encoded_text)) + encoded_text", "填充在了前面；GPT 的位置从左数起，填充应在末尾。"),
            ("[encoded_text[: self.max_length] for encoded_text in self.encoded_texts]", "self.encoded_texts", "太长的没有截断，各条长短不一，凑不成批。"),
            ("encoded_text + [pad_token_id] * (self.max_length - len(encoded_text))", "encoded_text", "短的没有填充，各条长短不一，凑不成批。"),
            ("[pad_token_id] *", "[0] *", "用 0 填充了：0 号是一个真的词元，应当用 pad_token_id。"),
            ("return max(len", "return min(len", "取成了最短的那条的长度；别的都比它长，一条也没有填充，凑不成批。"),
            ("self.encoded_texts[index], dtype=torch.long", "self.encoded_texts[index], dtype=torch.float32", "编号变成了小数；嵌入层拿编号当行号去查表，只收整数。"),
            ('int(self.data[index]["Label"])', '[int(self.data[index]["Label"])]', "标签多了一维，凑成批是 (b, 1)；交叉熵要的是 (b,)。"),
            ('int(self.data[index]["Label"])', 'self.data[index]["Label"]', "标签还是文字；CSV 里读出来的都是文字，要用 int 变回整数。"),
            (", disallowed_special=()", "", "没有写 disallowed_special=()：有人在短信里写了 <|endoftext|>，分词器就报错。"),
        ],
    ),
    dict(
        name="add_classification_head",
        title="换上分类的输出层",
        section="6.5",
        source="ch06/main",
        parts=["add_classification_head"],
        needs=[],
        extra={},
        task="写一个函数 add_classification_head(model, num_classes=2)，就地修改 GPTModel：先冻结全部参数；把 model.out_head 换成一个新的 nn.Linear（输入的维度与原来的相同，输出 num_classes 个）；最后让最后一个 Transformer 块和 final_norm 的参数参加训练。",
        blanks=["param.requires_grad = False", "in_features=model.out_head.in_features, out_features=num_classes", "(model.trf_blocks[-1], model.final_norm)", "param.requires_grad = True"],
        cases=[("输出层", head_shape), ("冻结", head_frozen)],
        mutants=[
            ("param.requires_grad = False", "pass", "没有冻结：全部参数都参加训练，慢得多，也占内存。"),
            ("nn.Linear(in_features=model.out_head.in_features, out_features=num_classes)", "nn.Linear(in_features=model.out_head.in_features, out_features=num_classes).requires_grad_(False)", "新的输出层也被冻结了；它是随机的，最应当训练，冻结要在换输出层之前做。"),
            ("(model.trf_blocks[-1], model.final_norm)", "(model.trf_blocks[-1],)", "忘了让 final_norm 参加训练，原书里它和最后一块是一起训练的。"),
            ("model.trf_blocks[-1]", "model.trf_blocks[0]", "解冻的是第一块；离输出最近的最后一块，才最需要为新任务调整。"),
            ("out_features=num_classes)", "out_features=num_classes, bias=False)", "新的输出层没有偏置；原来的没有，是因为 GPT-2 如此，分类的输出层用默认的就行，要有。"),
            ("out_features=num_classes)", "out_features=2)", "类别数写死成 2，没有用上 num_classes。"),
        ],
    ),
    dict(
        name="calc_accuracy_loader",
        title="分类的准确率",
        section="6.6",
        source="ch06/main",
        parts=["calc_accuracy_loader"],
        needs=[],
        extra={},
        task="写一个函数 calc_accuracy_loader(data_loader, model, device, num_batches=None)：切换到评估模式，对前 num_batches 批（None 表示全部）：搬到 device 上，不记梯度，取最后一个位置的 logits (b, 2)，argmax 得到预测；返回答对的样本数除以看过的样本数，是普通的小数；一批都没有时返回 nan。",
        blanks=["model.eval()", "islice(data_loader, num_batches)", "model(input_batch)[:, -1, :]", "torch.argmax(logits, dim=-1)", "predicted_labels.shape[0]", "correct_predictions / num_examples"],
        cases=[("数值", accuracy_values), ("模式", accuracy_modes), ("设备", accuracy_device)],
        mutants=[
            ("[:, -1, :]", "[:, 0, :]", "看的是第一个位置；因果掩码让它只看得见第一个词元，读完整条短信的是最后一个位置。"),
            ("model.eval()", "pass", "没有切换到评估模式，dropout 还开着，准确率比真实水平低，而且每次不同。"),
            ("torch.no_grad()", "torch.enable_grad()", "没有用 no_grad：评估不需要梯度，白白建了计算图，又慢又占内存。"),
            ("dim=-1)", "dim=0)", "argmax 的方向不对：沿着批比，得到的是哪一条短信的分数最高；要沿着类别比。"),
            ("islice(data_loader, num_batches)", "data_loader", "没有理会 num_batches，每次都看完全部的数据。"),
            ("num_examples += predicted_labels.shape[0]", "num_examples += 1", "除以的是批数，不是样本数，得到的是每批答对几条，会大于 1。"),
            (".sum().item()", ".float().mean().item()", "加的是每批的准确率，不是答对的条数，再除以样本数就小得离谱。"),
            (' if num_examples else float("nan")', "", "没有考虑一批都没有的情况，除以了 0。"),
        ],
    ),
    dict(
        name="calc_loss_batch_classifier",
        title="分类的一批损失",
        section="6.6",
        source="ch06/main",
        parts=["calc_loss_batch"],
        needs=[],
        extra={},
        task="写一个函数 calc_loss_batch(input_batch, target_batch, model, device)，这次是分类用的：输入 (b, t)、标签 (b,) 搬到 device 上，模型给出 (b, t, 2)，只取最后一个位置的 (b, 2)，与标签算交叉熵；返回的损失要带着计算图。",
        blanks=["input_batch.to(device), target_batch.to(device)", "model(input_batch)[:, -1, :]", "nn.functional.cross_entropy", "logits, target_batch"],
        cases=[("数值", class_loss), ("梯度", class_gradient), ("设备", class_device)],
        mutants=[
            ("model(input_batch)[:, -1, :]", "model(input_batch)", "没有取最后一个位置，logits 还是 (b, t, 2)，与标签 (b,) 对不上。"),
            ("[:, -1, :]", "[:, 0, :]", "取了第一个位置；因果掩码让它只看得见第一个词元，判断不了整条短信。"),
            ("[:, -1, :]", ".mean(dim=1)", "对所有位置的分数取了平均；前面的位置没有读完短信，书上只用最后一个位置。"),
            ("[:, -1, :]", "[:, :, -1]", "取错了维度：[:, :, -1] 是每个位置上第二类的分数，要的是最后一个位置上两类的分数。"),
            ("cross_entropy(logits,", "cross_entropy(torch.softmax(logits, dim=-1),", "多做了一次 softmax：cross_entropy 要的是 logits，它自己会做；做两遍，损失最低也只能到 0.31。"),
            ("logits, target_batch)", "logits, target_batch).item()", "用 .item() 取出了普通的数，计算图断了，没法 backward。"),
            ("input_batch, target_batch = input_batch.to(device)", "_ = input_batch.to(device)", "调用了 .to(device)，却没有接住结果：张量的 to 不改自己，返回搬过去的那一份。"),
        ],
    ),
    dict(
        name="train_classifier_simple",
        title="微调的训练循环",
        section="6.7",
        source="ch06/main",
        parts=["train_classifier_simple"],
        needs=["calc_loss_loader", "evaluate_model", "calc_accuracy_loader", "calc_loss_batch_classifier"],
        extra={},
        task="写一个函数 train_classifier_simple(model, train_loader, val_loader, optimizer, device, num_epochs, eval_freq, eval_iter)，与第 5 章的训练循环只差两处：数样本不数词元（examples_seen）；每轮结束时用 calc_accuracy_loader 在训练集和验证集上各看 eval_iter 批，记下两个准确率。"
        "步数从 0 数起，每 eval_freq 步用 evaluate_model 评估一次损失。返回（训练损失，验证损失，训练准确率，验证准确率，看过的样本数）。",
        blanks=["optimizer.zero_grad()", "calc_loss_batch(input_batch, target_batch, model, device)", "loss.backward()", "optimizer.step()", "input_batch.shape[0]", "global_step % eval_freq == 0", "evaluate_model(model, train_loader, val_loader, device, eval_iter)", "calc_accuracy_loader(val_loader, model, device, num_batches=eval_iter)"],
        cases=[("每一步", train_steps), ("模式", train_modes)],
        mutants=[
            ("optimizer.zero_grad()", "pass", "忘了 zero_grad：backward 是往旧梯度上累加，每一步用的是从头到现在所有梯度的和。"),
            ("optimizer.step()", "pass", "忘了 optimizer.step()：梯度求出来了，却没有拿去更新权重，损失不会下降。"),
            ("loss.backward()", "pass", "忘了 loss.backward()：没有梯度，optimizer.step() 什么也不会更新。"),
            ("model.train()", "pass", "每轮开头没有切换到训练模式：算准确率时切到了评估模式，没有人切回来，从第二轮起就没有 dropout 了。"),
            ("examples_seen += input_batch.shape[0]", "examples_seen += input_batch.numel()", "数的是词元，不是样本：一批有 b 条短信，用 shape[0]。"),
            ("calc_accuracy_loader(val_loader,", "calc_accuracy_loader(train_loader,", "验证准确率也是在训练集上算的，过拟合了也看不出来。"),
            ("examples_seen, global_step = 0, -1", "examples_seen, global_step = 0, 0", "步数从 1 数起了：第一步之后的那次评估没有做，整条损失曲线都错开了一步。"),
            ("calc_accuracy_loader(train_loader, model, device, num_batches=eval_iter)", "calc_accuracy_loader(train_loader, model, device)", "训练准确率看完了整个训练集：结果更准，可每一轮都要多花一遍前向的时间，书上只看 eval_iter 批。"),
        ],
    ),
    dict(
        name="classify_review",
        title="判断一条短信",
        section="6.8",
        source="ch06/main",
        parts=["classify_review"],
        needs=[],
        extra={},
        task="写一个函数 classify_review(text, model, tokenizer, device, max_length=None, pad_token_id=50256)：切换到评估模式，用 tokenizer.encode(text, disallowed_special=()) 分词；长度是 max_length（None 就用短信自己的长度），但不超过模型的上下文长度（看 model.pos_emb.weight 的形状），太长的截断，太短的在末尾填充；"
        "加上批的那一维，不记梯度，取最后一个位置的 logits，第 1 类返回 \"spam\"，否则返回 \"not spam\"。",
        blanks=["model.eval()", "model.pos_emb.weight.shape[0]", "min(max_length or len(input_ids), supported_context_length)", "[pad_token_id] * (max_length - len(input_ids))", "torch.tensor(input_ids, device=device).unsqueeze(0)", "model(input_tensor)[:, -1, :]"],
        cases=[("模型收到的输入", review_inputs), ("判断", review_answers), ("模式", review_modes)],
        mutants=[
            ("model.pos_emb.weight.shape[0]", "model.pos_emb.weight.shape[1]", "取成了嵌入维度：位置嵌入的形状是（上下文长度，d），书的第一次印刷也写错在这里，长短信会被白白截短。"),
            ("model.eval()", "pass", "没有切换到评估模式，dropout 还开着，同一条短信每次的判断可能不同。"),
            ("input_ids += [pad_token_id] * (max_length - len(input_ids))", "pass", "没有填充到训练时的长度；模型习惯了在那个位置作答，换个位置就不准了。"),
            ("input_ids += [pad_token_id] * (max_length - len(input_ids))", "input_ids = [pad_token_id] * (max_length - len(input_ids)) + input_ids", "填充在了前面，训练时填充在末尾，位置全都错开了。"),
            ("input_ids = input_ids[:max_length]", "pass", "太长的没有截断，位置嵌入没有行可查，会报错。"),
            ("[:, -1, :]", "[:, 0, :]", "看的是第一个位置；读完整条短信的是最后一个位置。"),
            (".item() == 1", ".item() == 0", "类别的编号弄反了：训练时 spam 是 1，ham 是 0。"),
            ("torch.no_grad()", "torch.enable_grad()", "没有用 no_grad：只判断不训练，白白建了计算图。"),
        ],
    ),
]
