"""手敲练习 · 第 5 章　每个组件的任务、检查和典型错误

格式与怎样添加，见 setup/practice.md。检查函数只拿到一个 ns：被检查的文件里定义的一切，用 ns.名字 取。
"""

import contextlib
import inspect
import io
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest import mock


class CharTokenizer:
    """一个字符一个词元的假分词器，用法与 tiktoken 相同：特殊词元没有得到允许就报错。"""

    chars = "\n" + "".join(map(chr, range(32, 127)))  # 换行和 95 个看得见的英文字符，编号 0–95；96 是 <|endoftext|>

    def encode(self, text, allowed_special=(), disallowed_special="all"):
        """文本 → 编号。"""
        special = "<|endoftext|>"
        if special in text and special not in allowed_special:
            if disallowed_special == "all":
                raise ValueError("特殊词元没有得到允许")
            return [self.chars.index(char) for char in text]
        ids = []
        for i, part in enumerate(text.split(special)):
            ids += [96] * (i > 0) + [self.chars.index(char) for char in part]
        return ids

    def decode(self, ids):
        """编号 → 文本；只收普通整数的列表，与 tiktoken 相同。"""
        if not all(type(i) is int for i in ids):
            raise TypeError("要的是整数的列表")
        return "".join([*self.chars, "<|endoftext|>"][i] for i in ids)


def tiny_model(drop=0.0, vocab=97, width=8, length=16):
    """极小的语言模型：词嵌入加位置嵌入，每个位置取它和左边的平均，再算 logits。seen 记下每次前向时的模式。"""
    import torch
    from torch import nn

    class TinyModel(nn.Module):
        def __init__(self):
            super().__init__()
            self.tok_emb, self.pos_emb = nn.Embedding(vocab, width), nn.Embedding(length, width)
            self.drop_emb, self.out_head = nn.Dropout(drop), nn.Linear(width, vocab, bias=False)
            self.seen = []

        def forward(self, idx):
            self.seen.append(("训练模式" if self.training else "评估模式", "记梯度" if torch.is_grad_enabled() else "不记梯度"))
            steps = torch.arange(idx.shape[1], device=idx.device)
            x = self.drop_emb(self.tok_emb(idx) + self.pos_emb(steps))  # (b, t, d)
            return self.out_head(x.cumsum(dim=1) / (steps + 1)[:, None])  # (b, t, V)

    torch.manual_seed(123)
    return TinyModel()


def table_model(rows):
    """查表的假模型：看到词元 i，下一个词元的 logits 就是第 i 行；只用来检查怎样选词。"""
    import torch
    from torch import nn

    class TableModel(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows, self.out_head, self.lengths, self.grads = torch.tensor(rows), nn.Linear(1, len(rows[0])), [], []

        def forward(self, idx):
            self.lengths.append(idx.shape[1])
            self.grads.append(torch.is_grad_enabled())
            return self.rows[idx]  # (b, t, V)

    return TableModel()


def random_batches(count, b=2, t=5):
    """几批随机的（输入，目标）。"""
    import torch

    generator = torch.Generator().manual_seed(7)
    windows = [torch.randint(0, 97, (b, t + 1), generator=generator) for _ in range(count)]
    return [(window[:, :-1], window[:, 1:]) for window in windows]


@contextlib.contextmanager
def swapped(function, **others):
    """暂时换掉一个函数用到的全局名字，用完换回来。"""
    names = function.__globals__
    before = {name: names[name] for name in others if name in names}
    names.update(others)
    try:
        yield
    finally:
        for name in others:
            del names[name]
        names.update(before)


def refused(work, error=ValueError):
    """应当被拒绝的输入：得到异常的名字；没有拒绝，就得到结果。别的异常照样往外抛，报告才说得出在哪一行。"""
    try:
        return work()
    except error as problem:
        return f"抛出 {type(problem).__name__}"


def captured(work):
    """运行一下，得到结果和它打印的内容（进度条不算）。"""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        result = work()
    return result, printed.getvalue().strip()


def cpu():
    """CPU 设备。"""
    import torch

    return torch.device("cpu")


# ---- text_to_token_ids、token_ids_to_text ----
def to_ids(ns):
    """编号、形状、数据类型。"""
    return {text: ns.text_to_token_ids(text, CharTokenizer()) for text in ["Hi you", "a", "ab<|endoftext|>c"]}


def to_text(ns):
    """文本；含换行、含特殊词元。"""
    import torch

    rows = {"几个词元": [[42, 74, 1, 90]], "换行": [[42, 0, 42]], "特殊词元": [[66, 96, 67]]}
    return {name: ns.token_ids_to_text(torch.tensor(row), CharTokenizer()) for name, row in rows.items()}


def to_text_one(ns):
    """只有一个词元。"""
    import torch

    return {"一个词元": ns.token_ids_to_text(torch.tensor([[34]]), CharTokenizer())}


def to_decode(ns):
    """交给 decode 的应是普通整数的列表。"""
    import torch

    calls = []
    spy = SimpleNamespace(decode=lambda ids: calls.append([type(ids).__name__, type(list(ids)[0]).__name__]) or "")
    ns.token_ids_to_text(torch.tensor([[42, 74]]), spy)
    return {"交给 decode 的（类型，里面的类型）": calls}


def round_trip(ns):
    """变成编号，再变回文本。"""
    return {"来回一趟": ns.token_ids_to_text(ns.text_to_token_ids("Every effort", CharTokenizer()), CharTokenizer())}


# ---- calc_loss_batch、calc_loss_loader、evaluate_model ----
def loss_value(ns):
    """损失与手算的相同：取出正确答案的对数概率，取负，再平均。"""
    import torch

    result = {}
    for name, size in {"2 × 5": (2, 5), "一批一个样本": (1, 5), "只有一个词元": (3, 1)}.items():
        model, (inputs, targets) = tiny_model(), random_batches(1, *size)[0]
        result[name] = loss = ns.calc_loss_batch(inputs, targets, model, cpu())
        by_hand = -torch.log_softmax(model(inputs), dim=-1).gather(-1, targets[..., None]).mean()
        result[f"{name}，与手算的相同"] = bool(abs(loss - by_hand) < 1e-5)
    return result


def loss_gradient(ns):
    """损失带着计算图，反向之后每个参数都有梯度。"""
    model, (inputs, targets) = tiny_model(), random_batches(1)[0]
    ns.calc_loss_batch(inputs, targets, model, cpu()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def loss_device(ns):
    """输入和目标都搬到指定的设备上；用只记形状的假设备 meta 来查。"""
    import torch

    seen = []

    def model(idx):
        seen.append(idx.device.type)
        return torch.zeros(*idx.shape, 97, device="meta")  # (b, t, V)

    inputs, targets = random_batches(1)[0]
    loss = ns.calc_loss_batch(inputs, targets, model, torch.device("meta")).device.type
    return {"模型收到的输入在": seen, "损失在": loss}


def loader_loss(ns):
    """平均损失；看几批。"""
    result = {}
    for name, wanted in {"全部": None, "前两批": 2, "要的比有的多": 9, "一批": 1}.items():
        model = tiny_model()
        result[name] = ns.calc_loss_loader(random_batches(4), model, cpu(), num_batches=wanted)
        result[f"{name}，算了几批"] = len(model.seen)
    return result


def loader_empty(ns):
    """一批都没有时是 nan，不报错，也不冒充 0。"""
    return {"一批都没有": ns.calc_loss_loader([], tiny_model(), cpu())}


def evaluate_losses(ns):
    """训练损失、验证损失，各看几批。"""
    model = tiny_model()
    losses = ns.evaluate_model(model, random_batches(4), random_batches(3, b=1, t=7), cpu(), eval_iter=2)
    return {"两个损失": losses, "一共算了几批": len(model.seen)}


def evaluate_modes(ns):
    """评估时关掉 dropout、不记梯度，评估完回到训练模式。"""
    import torch

    model = tiny_model(drop=0.5)
    model.train()
    torch.manual_seed(5)
    losses = ns.evaluate_model(model, random_batches(2), random_batches(2, t=7), cpu(), eval_iter=2)
    return {"每次前向时": model.seen, "评估之后": "训练模式" if model.training else "评估模式", "两个损失": losses}


# ---- generate_and_print_sample ----
def sample_printed(ns):
    """印出的一行：提示词开头，换行变成空格。"""
    _, text = captured(lambda: ns.generate_and_print_sample(tiny_model(), CharTokenizer(), cpu(), "Hi\nyou"))
    return {"印出的内容": text, "行数": len(text.splitlines())}


def sample_arguments(ns):
    """交给 generate_text_simple 的东西：设备、个数、上下文长度、模式。"""
    import torch

    calls = []

    def spy(model, idx, max_new_tokens, context_size):
        calls.append({"输入在": idx.device.type, "形状": list(idx.shape), "写几个": max_new_tokens, "上下文长度": context_size, "评估模式": not model.training})
        return torch.tensor([[41, 74]])

    model = tiny_model(drop=0.5)
    model.train()
    with swapped(ns.generate_and_print_sample, generate_text_simple=spy):
        captured(lambda: ns.generate_and_print_sample(model, CharTokenizer(), torch.device("meta"), "Hi you"))
    return {"生成时": calls, "生成之后": "训练模式" if model.training else "评估模式"}


# ---- get_rng_state、set_rng_state ----
def rng_restored(ns):
    """记下、抽几个数、恢复，再抽出来的一样。"""
    import torch

    torch.manual_seed(123)
    torch.rand(3)
    state = ns.get_rng_state(cpu())
    first = torch.rand(4)
    torch.rand(100)
    ns.set_rng_state(state, cpu())
    return {"记下了哪些": sorted(state), "记下之后抽的": first, "恢复之后抽的": torch.rand(4)}


def rng_device(ns):
    """计算设备有自己的发生器，也要记下、恢复。"""
    import torch

    log = []
    module = SimpleNamespace(get_rng_state=lambda *_: torch.tensor([9, 9]), set_rng_state=lambda state, *_: log.append(state))
    device = SimpleNamespace(type="gpu")
    with mock.patch.object(torch, "gpu", module, create=True):
        state = ns.get_rng_state(device)
        ns.set_rng_state(state, device)
        ns.set_rng_state({"cpu": state["cpu"]}, device)  # 在没有 GPU 的机器上存的，没有 gpu 那一项
    return {"记下了哪些": sorted(state), "设备的状态": state.get("gpu"), "恢复给设备的": log}


# ---- train_model_simple ----
def make_loader():
    """6 个样本，一批 2 个，不打乱。"""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    windows = torch.randint(0, 97, (6, 6), generator=torch.Generator().manual_seed(3))
    return DataLoader(TensorDataset(windows[:, :-1], windows[:, 1:]), batch_size=2)


def spy_optimizer(model, log):
    """会记账的 SGD：每走一步，记下当时输出层梯度的大小。"""
    import torch

    class SpySGD(torch.optim.SGD):
        def step(self, closure=None):
            log.append(None if model.out_head.weight.grad is None else model.out_head.weight.grad.norm().item())
            return super().step(closure)

    return SpySGD(model.parameters(), lr=0.5)


def train(ns, model, optimizer):
    """训练两轮，得到返回值和印出的内容。"""
    return captured(lambda: ns.train_model_simple(model, make_loader(), random_batches(2), optimizer, cpu(), 2, 2, 1, "Hi\nyou", CharTokenizer()))


def train_steps(ns):
    """每一步的梯度、训练后的权重、返回的三个列表。"""
    model, log = tiny_model(), []
    (train_losses, val_losses, tokens_seen), text = train(ns, model, spy_optimizer(model, log))
    return {
        "每一步的梯度": log,
        "训练之后的输出层": model.out_head.weight.detach(),
        "训练损失": train_losses,
        "验证损失": val_losses,
        "看过的词元数": tokens_seen,
        "每轮结束时写了一句": sum(line.strip().startswith("Hi you") for line in text.splitlines()),
    }


def train_modes(ns):
    """模型交来时是评估模式，训练的每一步都应当有 dropout。"""
    import torch

    model = tiny_model(drop=0.5).eval()
    torch.manual_seed(5)
    train(ns, model, torch.optim.SGD(model.parameters(), lr=0.5))
    return {"记梯度的前向，都在": [mode for mode, grad in model.seen if grad == "记梯度"], "训练之后的输出层": model.out_head.weight.detach()}


def train_stops(ns):
    """损失成了 nan：马上停下，不拿它更新权重。"""
    import torch

    model, log = tiny_model(), []
    optimizer = spy_optimizer(model, log)
    with torch.no_grad():
        model.out_head.weight[0, 0] = float("nan")
    before = model.tok_emb.weight.detach().clone()
    return {"结果": refused(lambda: train(ns, model, optimizer)), "走了几步": len(log), "词嵌入没有变": torch.equal(model.tok_emb.weight, before)}


# ---- save_checkpoint、load_checkpoint ----
class Broken:
    """存到它就会出错的东西，好像磁盘满了。"""

    def __reduce__(self):
        """torch.save 存到它时会调用这里。"""
        raise OSError("磁盘满了")


class Trap:
    """藏在文件里的代码：读的时候会调用 print。"""

    def __reduce__(self):
        """告诉 pickle：读的时候请调用 print。"""
        return print, ("文件里的代码运行了",)


def save_good(ns):
    """存下来，读回来；再存一次，换成新的。"""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pth"
        ns.save_checkpoint(path, {"model": torch.arange(5), "step": 1})
        first = torch.load(path, weights_only=True) if path.is_file() else None
        ns.save_checkpoint(path, {"model": torch.arange(3), "step": 2})
        second = torch.load(path, weights_only=True) if path.is_file() else None
        return {"存一次": first, "再存一次": second, "文件夹里有": sorted(os.listdir(folder))}


def save_broken(ns):
    """存到一半出错：报 OSError，旧的完好，不留下半个文件。"""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pth"
        torch.save({"step": 1}, path)
        done = refused(lambda: ns.save_checkpoint(path, {"model": Broken()}), OSError)
        old = refused(lambda: torch.load(path, weights_only=True), Exception)
        return {"结果": done, "旧的检查点": old, "文件夹里有": sorted(os.listdir(folder))}


def save_synced(ns):
    """改名之前，数据已经全部交给硬盘。"""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        path, sizes = Path(folder) / "model.pth", []
        with mock.patch.object(os, "fsync", lambda number: sizes.append(os.fstat(number).st_size)):
            ns.save_checkpoint(path, {"model": torch.zeros(10, 10)})
        return {"落盘的次数": len(sizes), "落盘时已经写完": sizes == [path.stat().st_size] if path.is_file() else False}


def checkpoint(**others):
    """一个完整的检查点。"""
    import torch

    return {"config": {"emb_dim": 8}, "seed": 1, "text": "story", "model": {"w": torch.ones(2)}, "optimizer": {}, "progress": {"step": 3}} | others


def load(ns, content):
    """把内容存成文件，再用被检查的函数读；内容是字节时，原样写进文件。"""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pth"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            torch.save(content, path)
        return captured(lambda: refused(lambda: ns.load_checkpoint(path)))[0]


def load_good(ns):
    """完整的检查点；多了别的键也能读。"""
    return {"读出的内容": load(ns, checkpoint()), "多一个键": load(ns, checkpoint(note="hello"))}


def load_bad(ns):
    """不存在、损坏、不是字典、缺了一项、夹带代码：都是 ValueError。"""
    short = checkpoint()
    del short["optimizer"]
    files = {"不存在": None, "损坏的": b"PK\x03\x04broken", "空的": b"", "不是字典": [1, 2], "缺了优化器": short, "夹带代码": checkpoint(text=Trap())}
    return {name: load(ns, content) for name, content in files.items()}


def load_options(ns):
    """读的时候，张量都放到 CPU 上，只读数字不执行代码。"""
    import torch

    options, real = [], torch.load

    def spy(*args, **kwargs):
        given = inspect.signature(real).bind(*args, **kwargs).arguments
        options.append({name: str(given.get(name)) for name in ("map_location", "weights_only")})
        return real(*args, **kwargs)

    with mock.patch.object(torch, "load", spy):
        load(ns, checkpoint())
    return {"torch.load 的选项": options}


# ---- print_sampled_tokens、softmax_with_temperature、generate ----
def sampled_counts(ns):
    """抽 1000 次的次数；与之前用过多少随机数无关；最后一个几乎抽不到，也占一格。"""
    import torch

    logits = torch.tensor([4.51, 0.89, -1.90, 6.75, 1.63, -1.62, -1.89, 6.28, -90.0])
    torch.manual_seed(7)
    counts, text = captured(lambda: ns.print_sampled_tokens(torch.softmax(logits, dim=0)))
    return {"次数": counts, "印了几行": len(text.splitlines())}


def temperature_values(ns):
    """几种温度下的概率。"""
    import torch

    logits = torch.tensor([4.51, 0.89, -1.90, 6.75])
    result = {f"温度 {temperature}": ns.softmax_with_temperature(logits, temperature) for temperature in (1, 0.1, 0.5, 5)}
    return result | {"加起来": ns.softmax_with_temperature(logits, 5).sum(), "分数没有被改动": logits}


def temperature_gradient(ns):
    """梯度也传得回去。"""
    import torch

    logits = torch.tensor([1.0, 2.0, 0.5], requires_grad=True)
    ns.softmax_with_temperature(logits, 2.0)[0].backward()
    return {"梯度": logits.grad}


RING = [[0.0, 3.0, 2.0, 1.0, -1.0], [1.0, 0.0, 3.0, 2.0, -1.0], [2.0, 1.0, 0.0, 3.0, -1.0], [1.0, 2.0, 0.5, 0.0, 3.0], [3.0, 1.0, 2.0, 0.5, 0.0]]  # 贪心时走 0 → 1 → 2 → 3 → 4 → 0


def generate_with(ns, idx, **options):
    """用查表的模型生成，先设好种子。"""
    import torch

    torch.manual_seed(123)
    return ns.generate(table_model(RING), torch.tensor(idx), context_size=8, **options)


def generate_greedy(ns):
    """温度 0：每次选最大的。"""
    return {"一个提示词": generate_with(ns, [[0, 2]], max_new_tokens=4), "一批两个": generate_with(ns, [[0, 3], [1, 1]], max_new_tokens=3), "不生成": generate_with(ns, [[0, 1]], max_new_tokens=0)}


def generate_context(ns):
    """太长时只看最后 context_size 个词元；不记梯度。"""
    import torch

    model = tiny_model()
    idx = torch.arange(20)[None]
    out = ns.generate(model, idx, max_new_tokens=3, context_size=4)
    table = table_model(RING)
    ns.generate(table, torch.tensor([[0] * 10]), max_new_tokens=2, context_size=4)
    return {"输出": out, "每次看几个词元": table.lengths, "记梯度": table.grads}


def generate_random(ns):
    """按概率抽：400 个同样的提示词，各抽到几次。"""
    import torch

    result = {}
    for name, options in {"温度 1": {"temperature": 1.0}, "温度 0.5": {"temperature": 0.5}, "温度 3": {"temperature": 3.0}, "温度 3，top-k 2": {"temperature": 3.0, "top_k": 2}, "温度 1，top-k 1": {"temperature": 1.0, "top_k": 1}}.items():
        out = generate_with(ns, [[0]] * 400, max_new_tokens=1, **options)
        result[name] = torch.bincount(out[:, -1], minlength=5).tolist()
    out = generate_with(ns, [[0]] * 200 + [[3]] * 200, max_new_tokens=1, temperature=3.0, top_k=4)
    result["一批里分数不同，top-k 4"] = [torch.bincount(half[:, -1], minlength=5).tolist() for half in (out[:200], out[200:])]
    return result | {"三个词元": generate_with(ns, [[0, 1], [2, 3]], max_new_tokens=3, temperature=1.5, top_k=3)}


def generate_eos(ns):
    """遇到结束词元就停，它不留在结果里。"""
    return {
        "遇到就停": generate_with(ns, [[0]], max_new_tokens=9, eos_id=3),
        "第一个就是": generate_with(ns, [[0]], max_new_tokens=9, eos_id=1),
        "一直没遇到": generate_with(ns, [[0]], max_new_tokens=3, eos_id=4),
        "结束词元是 0": generate_with(ns, [[1]], max_new_tokens=9, eos_id=0),
    }


def generate_eos_rows(ns):
    """一批几句：先写完的只填结束词元，全都写完才停；提示词里的结束词元不算。"""
    return {
        "一先一后": generate_with(ns, [[0], [2]], max_new_tokens=9, eos_id=4),
        "三句": generate_with(ns, [[3], [0], [1]], max_new_tokens=9, eos_id=4),
        "没来得及都写完": generate_with(ns, [[0], [1]], max_new_tokens=2, eos_id=2),
        "提示词里就有": generate_with(ns, [[4], [1]], max_new_tokens=9, eos_id=4),
    }


def generate_refuses(ns):
    """不合法的温度和 top_k。"""
    options = {"温度是负数": {"temperature": -1.0}, "温度是 nan": {"temperature": float("nan")}, "top_k 是 0": {"top_k": 0}, "top_k 太大": {"top_k": 6}, "top_k 等于词表大小": {"top_k": 5}}
    return {name: refused(lambda option=option: generate_with(ns, [[0]], max_new_tokens=2, **option)) for name, option in options.items()}


# ---- gpt2_shapes、assign、load_weights_into_gpt、gpt2_by_hand ----
SMALL = {"n_vocab": 11, "n_ctx": 6, "n_embd": 4, "n_head": 2, "n_layer": 2}


def shapes_all(ns):
    """每一项的名字和形状。"""
    shapes = ns.gpt2_shapes(dict(SMALL))
    return {"项数": len(shapes), "名字与形状": dict(sorted(shapes.items()))}


def shapes_124m(ns):
    """124M 的参数一共 124,439,808 个。"""
    from math import prod

    return {"参数个数": sum(prod(shape) for shape in ns.gpt2_shapes({"n_vocab": 50257, "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12}).values())}


def assign_good(ns):
    """新的参数：类型、数值、数据类型，不与数组共用内存。"""
    import numpy as np
    import torch

    right = np.arange(6, dtype=np.float64).reshape(2, 3)
    single = right.astype(np.float32)
    new = ns.assign(torch.nn.Parameter(torch.zeros(2, 3)), right)
    alone = ns.assign(torch.nn.Parameter(torch.zeros(2, 3)), single)
    single[:] = -1
    return {"是不是参数": isinstance(new, torch.nn.Parameter), "要不要梯度": new.requires_grad, "数值": new.detach(), "数组改了之后": alone.detach()}


def assign_keeps(ns):
    """设备和数据类型跟着模型走；用只记形状的假设备 meta 来查。"""
    import numpy as np
    import torch

    left = torch.nn.Parameter(torch.zeros(2, device="meta", dtype=torch.float16))
    new = ns.assign(left, np.ones(2, dtype=np.float32))
    return {"设备": new.device.type, "数据类型": str(new.dtype)}


def assign_refuses(ns):
    """形状不同、没有这个参数：ValueError。"""
    import numpy as np
    import torch

    left = torch.nn.Parameter(torch.zeros(2, 3))
    rights = {"忘了转置": np.ones((3, 2)), "会广播的": np.ones(3), "少一维": np.ones(6)}
    result = {name: refused(lambda right=right: ns.assign(left, right).shape) for name, right in rights.items()}
    return result | {"没有这个参数": refused(lambda: ns.assign(None, np.ones(3)))}


def gpt2_params(layers=2, scale=1.0):
    """一份随机的 GPT-2 权重，按 nest_gpt2_params 的样子摆放。"""
    import numpy as np

    random = np.random.RandomState(123)
    array = lambda *shape: (scale * random.randn(*shape)).astype(np.float32)  # noqa: E731
    dense = lambda n, m: {"w": array(n, m), "b": array(m)}  # noqa: E731
    norm = lambda: {"g": 1 + array(4), "b": array(4)}  # noqa: E731
    blocks = [{"attn": {"c_attn": dense(4, 12), "c_proj": dense(4, 4)}, "mlp": {"c_fc": dense(4, 16), "c_proj": dense(16, 4)}, "ln_1": norm(), "ln_2": norm()} for _ in range(layers)]
    return {"wte": array(11, 4), "wpe": array(6, 4), "blocks": blocks, **norm()}


def empty_gpt():
    """空的 GPTModel 骨架：零件和名字与第 4 章的相同，只是不能前向。"""
    import torch
    from torch import nn

    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.shift = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))

    def part(**modules):
        module = nn.Module()
        for name, inner in modules.items():
            setattr(module, name, inner)
        return module

    torch.manual_seed(123)
    attention = lambda: part(W_query=nn.Linear(4, 4), W_key=nn.Linear(4, 4), W_value=nn.Linear(4, 4), out_proj=nn.Linear(4, 4))  # noqa: E731
    forward = lambda: part(layers=nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 4)))  # noqa: E731
    blocks = nn.Sequential(*[part(att=attention(), ff=forward(), norm1=Norm(), norm2=Norm()) for _ in range(2)])
    return part(tok_emb=nn.Embedding(11, 4), pos_emb=nn.Embedding(6, 4), trf_blocks=blocks, final_norm=Norm(), out_head=nn.Linear(4, 11, bias=False))


def weights_loaded(ns):
    """每个参数都装对了地方。"""
    gpt = empty_gpt()
    ns.load_weights_into_gpt(gpt, gpt2_params())
    return dict(gpt.state_dict())


def weights_apart(ns):
    """输出层是词嵌入的一份拷贝，不是同一份。"""
    gpt = empty_gpt()
    ns.load_weights_into_gpt(gpt, gpt2_params())
    return {"同一个参数": gpt.out_head.weight is gpt.tok_emb.weight, "共用内存": gpt.out_head.weight.data_ptr() == gpt.tok_emb.weight.data_ptr(), "参数个数": sum(p.numel() for p in gpt.parameters())}


def weights_refused(ns):
    """层数不同、维度不同：ValueError。"""
    result = {f"权重有 {layers} 块": refused(lambda layers=layers: ns.load_weights_into_gpt(empty_gpt(), gpt2_params(layers))) for layers in (1, 3)}
    wide = gpt2_params()
    wide["wpe"] = wide["wpe"][:5]
    return result | {"位置嵌入短一行": refused(lambda: ns.load_weights_into_gpt(empty_gpt(), wide))}


def hand_logits(ns):
    """logits：几种长度、几种头数。"""
    import torch

    ids = torch.tensor([3, 1, 4, 1, 5, 9])
    result = {f"{t} 个词元": ns.gpt2_by_hand(ids[:t], gpt2_params(scale=0.5), 2) for t in (1, 3, 6)}
    return result | {"1 个头": ns.gpt2_by_hand(ids[:3], gpt2_params(scale=0.5), 1), "没有块": ns.gpt2_by_hand(ids[:3], gpt2_params(layers=0), 2)}


def hand_causal(ns):
    """换掉最后一个词元，前面的 logits 不变。"""
    import torch

    params = gpt2_params(scale=0.5)
    first, second = (ns.gpt2_by_hand(torch.tensor([3, 1, 4, last]), params, 2) for last in (1, 7))
    return {"前面的不变": torch.allclose(first[:3], second[:3]), "最后的变了": not torch.allclose(first[3], second[3])}


LOSS = ["calc_loss_batch"]
SAMPLE = ["generate_text_simple", "text_to_token_ids", "token_ids_to_text"]

COMPONENTS = [
    dict(
        name="text_to_token_ids",
        title="文本变编号",
        section="5.1.1",
        source="ch05/main",
        parts=["text_to_token_ids"],
        needs=[],
        extra={},
        task="写一个函数 text_to_token_ids(text, tokenizer)：用 tokenizer.encode 把文本变成词元编号（允许 <|endoftext|>），再变成张量，并在最前面加上批的那一维，返回 (1, t) 的整数张量。",
        blanks=["text, allowed_special={\"<|endoftext|>\"}", "torch.tensor(encoded)", "unsqueeze(0)"],
        cases=[("编号与形状", to_ids)],
        mutants=[
            (".unsqueeze(0)", "", "没有加上批的那一维，得到 (t,)；模型只收成批的输入，一句话也要写成 (1, t)。"),
            ("unsqueeze(0)", "unsqueeze(1)", "批的那一维加到了后面，得到 (t, 1)：模型会以为这是 t 句话，每句只有一个词元。"),
            (', allowed_special={"<|endoftext|>"}', "", "没有写 allowed_special，文本里一出现 <|endoftext|>，分词器就报错。"),
            ('allowed_special={"<|endoftext|>"}', "disallowed_special=()", "把 <|endoftext|> 当成普通的字拆开了；要用 allowed_special 让它作为一个特殊词元。"),
            ("torch.tensor(encoded)", "torch.tensor(encoded, dtype=torch.float32)", "编号变成了小数；嵌入层拿编号当行号去查表，只收整数。"),
        ],
    ),
    dict(
        name="token_ids_to_text",
        title="编号变文本",
        section="5.1.1",
        source="ch05/main",
        parts=["token_ids_to_text"],
        needs=["text_to_token_ids"],
        extra={},
        task="写一个函数 token_ids_to_text(token_ids, tokenizer)：token_ids 是 (1, t) 的张量，去掉批的那一维，变成普通的列表，再用 tokenizer.decode 变回文本。",
        blanks=["tokenizer.decode", "token_ids.squeeze(0)", "tolist()"],
        cases=[("文本", to_text), ("一个词元", to_text_one), ("交给 decode 的", to_decode), ("来回一趟", round_trip)],
        mutants=[
            (".squeeze(0)", "", "没有去掉批的那一维，decode 拿到的是「列表的列表」。"),
            ("squeeze(0)", "squeeze()", "squeeze 没有指明是哪一维：只有一个词元时两维都被去掉，剩下的不再是列表，而是一个数。"),
            ("squeeze(0)", "squeeze(1)", "去错了维度：该去掉的是第 0 维，也就是批；第 1 维是 t，除非恰好只有一个词元，否则什么也没去掉。"),
            (".tolist()", "", "没有变成普通的列表，decode 拿到的是张量，认不出里面的编号。"),
            ("token_ids.squeeze(0).tolist()", "token_ids[0, -1:].tolist()", "只解码了最后一个词元，前面的都丢了。"),
            ("tokenizer.decode(token_ids.squeeze(0).tolist())", '" ".join(tokenizer.decode([i]) for i in token_ids.squeeze(0).tolist())', "一个一个地解码再用空格连起来：空格本来就在词元里，这样会多出许多，遇到一个字分成几个词元时更是乱码。"),
        ],
    ),
    dict(
        name="calc_loss_batch",
        title="一批的损失",
        section="5.1.3",
        source="ch05/main",
        parts=["calc_loss_batch"],
        needs=[],
        extra={},
        task="写一个函数 calc_loss_batch(input_batch, target_batch, model, device)：把输入和目标（各是 (b, t)）搬到 device 上，模型算出 (b, t, V) 的 logits，展平成 (b·t, V) 和 (b·t,)，返回交叉熵，也就是所有位置的平均；它要带着计算图，可以 backward。",
        blanks=["input_batch.to(device), target_batch.to(device)", "model(input_batch)", "logits.flatten(0, 1)", "target_batch.flatten()"],
        cases=[("数值", loss_value), ("梯度", loss_gradient), ("设备", loss_device)],
        mutants=[
            ("logits.flatten(0, 1), target_batch.flatten()", "logits, target_batch", "没有展平：cross_entropy 把第 1 维当成类别，而这里的第 1 维是 t，形状对不上就报错。"),
            ("logits.flatten(0, 1), target_batch.flatten()", "logits.reshape(logits.shape[0], logits.shape[2], -1), target_batch", "用 reshape 代替了转置：形状凑对了，内容却全打乱了，每个位置比的是别的位置的分数，不报错，损失却不对。"),
            ("logits.flatten(0, 1), target_batch.flatten()", "logits[:, -1], target_batch[:, -1]", "只算了最后一个位置的损失；预训练时每个位置都在预测下一个词元，都要算。"),
            ("logits.flatten(0, 1), target_batch.flatten()", "logits[:, :-1].flatten(0, 1), target_batch[:, 1:].flatten()", "又错开了一位：目标在切样本时已经右移过，再移一次就成了预测后面第二个词元。"),
            ("target_batch.flatten()", "input_batch.flatten()", "拿输入当了目标：模型只要把眼前的词元抄一遍，损失就是 0。"),
            ("logits.flatten(0, 1)", "torch.softmax(logits, dim=-1).flatten(0, 1)", "多做了一次 softmax：cross_entropy 要的是 logits，它自己会做；做两遍，损失就压在 ln V 附近，几乎不降。"),
            ("target_batch.flatten())", 'target_batch.flatten(), reduction="sum")', "损失是所有位置的和，没有平均：批越大、句子越长，损失和梯度就越大。"),
            ("target_batch.flatten())", "target_batch.flatten()).item()", "用 .item() 取出了普通的数，计算图断了，没法 backward；训练要用的损失必须是张量。"),
            ("input_batch, target_batch = input_batch.to(device)", "_ = input_batch.to(device)", "调用了 .to(device)，却没有接住结果：张量的 to 不改自己，返回搬过去的那一份。"),
        ],
    ),
    dict(
        name="calc_loss_loader",
        title="数据集的平均损失",
        section="5.1.3",
        source="ch05/main",
        parts=["calc_loss_loader"],
        needs=LOSS,
        extra={},
        task="写一个函数 calc_loss_loader(data_loader, model, device, num_batches=None)：用 calc_loss_batch 算前 num_batches 批的损失（None 表示全部，要的比有的多就看全部），返回它们的平均，是普通的小数；一批都没有时返回 nan。可以用 itertools.islice。",
        blanks=["islice(data_loader, num_batches)", "calc_loss_batch(input_batch, target_batch, model, device)", "loss.item()", "sum(losses) / len(losses)", 'float("nan")'],
        cases=[("平均与批数", loader_loss), ("空的", loader_empty)],
        mutants=[
            ("islice(data_loader, num_batches)", "data_loader", "没有理会 num_batches，每次都看完全部的数据，评估一次要等很久。"),
            ("sum(losses) / len(losses)", "sum(losses)", "把各批的损失加起来，忘了除以批数。"),
            ("/ len(losses)", "/ len(data_loader)", "除以了全部的批数，而不是看过的批数；只看前几批时，损失就被除小了。"),
            ("/ len(losses)", "/ (num_batches or len(data_loader))", "除以了要的批数；数据没有那么多批时，应除以真正看过的批数。"),
            ("losses.append(loss.item())", "losses.append(loss)", "没有 .item()：累加的是张量，每一批的计算图都留在内存里，返回的也不是普通的数。"),
            (' if losses else float("nan")', "", "没有考虑一批都没有的情况，除以了 0。"),
            ('float("nan")', "0.0", "一批都没有时返回了 0：损失 0 的意思是全都猜对了，而实际上什么也没看。"),
        ],
    ),
    dict(
        name="evaluate_model",
        title="评估模型",
        section="5.2",
        source="ch05/main",
        parts=["evaluate_model"],
        needs=[*LOSS, "calc_loss_loader"],
        extra={},
        task="写一个函数 evaluate_model(model, train_loader, val_loader, device, eval_iter)：切换到评估模式，不记梯度，用 calc_loss_loader 在训练集和验证集上各看 eval_iter 批，再切换回训练模式，返回（训练损失，验证损失）。",
        blanks=["model.eval()", "torch.no_grad()", "train_loader, model, device, num_batches=eval_iter", "val_loader, model, device, num_batches=eval_iter", "model.train()"],
        cases=[("损失", evaluate_losses), ("模式", evaluate_modes)],
        mutants=[
            ("model.eval()", "pass", "没有切换到评估模式：dropout 还开着，评估的结果忽高忽低，也比真实水平差。"),
            ("model.train()", "pass", "评估完没有切换回训练模式，后面的训练就都没有 dropout 了，不报错，只是更容易过拟合。"),
            ("torch.no_grad()", "torch.enable_grad()", "没有用 no_grad：评估不需要梯度，白白建了计算图，又慢又占内存。"),
            ("calc_loss_loader(val_loader,", "calc_loss_loader(train_loader,", "验证损失也是在训练集上算的，过拟合了也看不出来。"),
            ("return train_loss, val_loss", "return val_loss, train_loss", "返回的次序反了：应先训练损失，后验证损失。"),
            ("val_loader, model, device, num_batches=eval_iter", "val_loader, model, device", "验证集没有限制批数，每次评估都把它看一遍，训练的时间都花在评估上了。"),
        ],
    ),
    dict(
        name="generate_and_print_sample",
        title="边训练边看它写",
        section="5.2",
        source="ch05/main",
        parts=["generate_and_print_sample"],
        needs=SAMPLE,
        extra={},
        task="写一个函数 generate_and_print_sample(model, tokenizer, device, start_context)：切换到评估模式，从 model.pos_emb.weight 的形状得到上下文长度，把 start_context 变成编号、搬到 device 上，用 generate_text_simple 接着写 50 个词元；变回文本，换行换成空格，印成一行，最后切换回训练模式。",
        blanks=["model.eval()", "model.pos_emb.weight.shape[0]", "text_to_token_ids(start_context, tokenizer).to(device)", "token_ids_to_text(token_ids, tokenizer)", "model.train()"],
        cases=[("印出的内容", sample_printed), ("怎样生成", sample_arguments)],
        mutants=[
            ("model.eval()", "pass", "没有切换到评估模式：dropout 还开着，生成的话每次都不同，也更差。"),
            ("model.train()", "pass", "生成完没有切换回训练模式，后面的训练就都没有 dropout 了。"),
            ("weight.shape[0]", "weight.shape[1]", "取成了嵌入维度 d：位置嵌入的形状是（上下文长度，d），上下文长度是 shape[0]。"),
            (".to(device)", "", "输入没有搬到模型所在的设备上，在 MPS 或 CUDA 上会报错说两个张量不在一处。"),
            ('.replace("\\n", " ")', "", "没有把换行换成空格，一句话会印成好几行，训练的记录就乱了。"),
            ("token_ids_to_text(token_ids, tokenizer)", "token_ids_to_text(encoded, tokenizer)", "印出来的是提示词，不是模型接着写的结果。"),
        ],
    ),
    dict(
        name="train_model_simple",
        title="训练循环",
        section="5.2",
        source="ch05/main",
        parts=["train_model_simple"],
        needs=[*LOSS, "calc_loss_loader", "evaluate_model", *SAMPLE, "generate_and_print_sample"],
        extra={},
        task="写一个函数 train_model_simple(model, train_loader, val_loader, optimizer, device, num_epochs, eval_freq, eval_iter, start_context, tokenizer)。"
        "每一轮切换到训练模式，对每一批：清梯度、算损失（不是有限的数就抛出 ValueError）、反向、更新，记下看过的词元数；步数从 0 数起，每 eval_freq 步用 evaluate_model 评估一次，记下两个损失和词元数，印一行。"
        "每轮结束用 generate_and_print_sample 写一句。返回（训练损失，验证损失，当时的词元数）三个列表。",
        blanks=["optimizer.zero_grad()", "calc_loss_batch(input_batch, target_batch, model, device)", "loss.backward()", "optimizer.step()", "global_step % eval_freq == 0", "evaluate_model(model, train_loader, val_loader, device, eval_iter)", "generate_and_print_sample(model, tokenizer, device, start_context)"],
        cases=[("每一步", train_steps), ("模式", train_modes), ("不是有限的数", train_stops)],
        mutants=[
            ("optimizer.zero_grad()", "pass", "忘了 zero_grad：backward 是往旧梯度上累加，每一步用的是从头到现在所有梯度的和。"),
            ("loss.backward()", "loss.backward(); optimizer.zero_grad()", "清梯度的位置不对，写在了反向和更新之间：刚求出的梯度还没用就清掉了，权重一动不动。"),
            ("optimizer.step()", "pass", "忘了 optimizer.step()：梯度求出来了，却没有拿去更新权重，损失不会下降。"),
            ("model.train()", "pass", "每轮开头没有切换到训练模式：模型交来时若是评估模式，前几步就没有 dropout。"),
            ("tokens_seen += input_batch.numel()", "tokens_seen += input_batch.shape[0]", "数的是样本，不是词元：一批有 b·t 个词元，用 numel()。"),
            ("tokens_seen, global_step = 0, -1", "tokens_seen, global_step = 0, 0", "步数从 1 数起了：第一步之后的那次评估没有做，整条损失曲线都错开了一步。"),
            ("global_step % eval_freq == 0", "epoch % eval_freq == 0", "拿轮数去除了，应是步数：有的轮每一步都评估，慢得很，有的轮一次也不评估。"),
            ("val_losses.append(val_loss)", "val_losses.append(train_loss)", "验证损失那一列记成了训练损失：两条线永远重合，过拟合了也看不出来。"),
            ("if not loss.isfinite():", "if False:", "没有检查损失是不是有限的数：nan 更新一次，所有的权重就都成了 nan，后面全是白算。"),
            ("generate_and_print_sample(model, tokenizer, device, start_context)", "pass", "每轮结束时没有让模型写一句；只看损失，看不出它写的话通不通。"),
        ],
    ),
    dict(
        name="print_sampled_tokens",
        title="抽一千次",
        section="5.3.1",
        source="ch05/main/example_03_decoding.py",
        parts=["print_sampled_tokens"],
        needs=[],
        extra={"vocab": "ch05/main/example_03_decoding.py", "inverse_vocab": "ch05/main/example_03_decoding.py"},
        task="写一个函数 print_sampled_tokens(probas)：设种子 123，用 torch.multinomial 一次抽一个，抽 1000 次，数出每个词元各出现几次，没抽到的也要占一格；逐行打印次数和 inverse_vocab 里的词，返回次数的列表。",
        blanks=["torch.manual_seed(123)", "torch.multinomial(probas, num_samples=1).item()", "minlength=len(probas)", "inverse_vocab[number]"],
        cases=[("次数", sampled_counts)],
        mutants=[
            ("torch.manual_seed(123)", "pass", "没有设种子，结果取决于之前用过多少随机数，每次运行都不同。"),
            ("[torch.multinomial(probas, num_samples=1).item() for", "[(torch.manual_seed(123), torch.multinomial(probas, num_samples=1).item())[1] for", "设种子写进了循环里：每次抽之前都回到同一个起点，抽出来的 1000 个全都一样。"),
            ("torch.multinomial(probas, num_samples=1).item()", "torch.argmax(probas).item()", "用了 argmax：那是贪心，1000 次全是概率最大的那一个。"),
            ("torch.multinomial(probas, num_samples=1).item()", "torch.randint(len(probas), (1,)).item()", "没有按概率抽，每个词的机会都一样大。"),
            (", minlength=len(probas)", "", "bincount 没有给 minlength：最后几个词一次没抽到时，列表就短了一截，与词表对不上。"),
            ("torch.multinomial(probas, num_samples=1)", "torch.multinomial(torch.softmax(probas, dim=0), num_samples=1)", "对概率又做了一次 softmax，各个词的概率变得差不多大。"),
        ],
    ),
    dict(
        name="softmax_with_temperature",
        title="带温度的 softmax",
        section="5.3.1",
        source="ch05/main/example_03_decoding.py",
        parts=["softmax_with_temperature"],
        needs=[],
        extra={},
        task="写一个函数 softmax_with_temperature(logits, temperature)：logits 是 (V,) 的分数，先除以温度，再做 softmax，返回 (V,) 的概率。不要改动传进来的 logits。",
        blanks=["torch.softmax", "logits / temperature", "dim=0"],
        cases=[("数值", temperature_values), ("梯度", temperature_gradient)],
        mutants=[
            ("logits / temperature", "logits * temperature", "温度乘上去了，应当是除：温度大，差距要变小，分布才变平。"),
            ("logits / temperature", "logits", "没有用上温度，与普通的 softmax 一样。"),
            ("torch.softmax(logits / temperature, dim=0)", "torch.softmax(logits, dim=0) / temperature", "先做 softmax 再除以温度：概率加起来不再是 1，大小的比例也没有变。"),
            ("torch.softmax(logits / temperature, dim=0)", "torch.softmax(logits, dim=0) ** (1 / temperature)", "对概率开了 1/T 次方，却没有重新归一化，加起来不是 1；先除以温度再做 softmax，就不用操心这个。"),
            ("torch.softmax", "torch.log_softmax", "用了 log_softmax，得到的是对数概率，都是负数。"),
            ("logits / temperature", "logits.div_(temperature)", "用 div_ 就地改了传进来的 logits，下一次换个温度再算，就不是从原来的分数开始了。"),
        ],
    ),
    dict(
        name="generate",
        title="温度与 top-k 生成",
        section="5.3.3",
        source="ch05/main",
        parts=["generate"],
        needs=[],
        extra={},
        task="写一个函数 generate(model, idx, max_new_tokens, context_size, temperature=0.0, top_k=None, eos_id=None)：温度小于 0（或是 nan）、top_k 不在 1 到词表大小（model.out_head.out_features）之间时报 ValueError。"
        "每一步只看最后 context_size 个词元，不记梯度，取最后一个位置的 logits；有 top_k 就把第 k 名以外的改成 -inf；温度大于 0 时除以温度，减去最大值，做 softmax，用 multinomial 抽一个，否则取最大的；"
        "有 eos_id 时，已经写完的行只填 eos_id，全都写完就停（最后这一列不放进结果）；接到 idx 后面。返回 (b, t + 新生成的个数)。",
        blanks=["idx[:, -context_size:]", "logits[:, -1, :]", "torch.topk(logits, top_k)", "top_logits[:, -1:]", "torch.where(logits < min_val, -torch.inf, logits)", "logits / temperature", "torch.multinomial(probs, num_samples=1)", "torch.where(finished, eos_id, idx_next)", "finished.all()", "torch.cat((idx, idx_next), dim=1)"],
        cases=[("贪心", generate_greedy), ("上下文", generate_context), ("采样", generate_random), ("结束词元", generate_eos), ("一批几句的结束词元", generate_eos_rows), ("不合法的参数", generate_refuses)],
        mutants=[
            ("idx[:, -context_size:]", "idx[:, :context_size]", "截成了开头的 context_size 个；要接着写，看的应是最后那几个词元。"),
            ("idx[:, -context_size:]", "idx", "没有截到 context_size：句子一长，位置嵌入就没有行可查了。"),
            ("logits[:, -1, :]", "logits[:, 0, :]", "取了第一个位置的分数；下一个词元的分数在最后一个位置上。"),
            ("top_logits[:, -1:]", "top_logits[:, :1]", "取成了第一名的分数：其余的全被改成 -inf，top-k 变成了贪心。"),
            ("top_logits[:, -1:]", "top_logits[0, -1]", "门槛只取了第一行的：一批里别的句子，分数与它不相干，留下的就不是它们自己的前 k 名。"),
            ("logits < min_val", "logits <= min_val", "把第 k 名自己也去掉了，只剩 k − 1 个。"),
            ("-torch.inf", "0.0", "第 k 名以外的分数改成了 0，不是 -inf：e 的 0 次方是 1，它们照样抽得到。"),
            ("logits / temperature", "logits * temperature", "温度乘上去了，应当是除：本来要更随意的，反而更保守。"),
            ("logits = logits / temperature", "pass", "没有用上温度，只要大于 0，取多少结果都一样。"),
            ("torch.multinomial(probs, num_samples=1)", "torch.argmax(probs, dim=-1, keepdim=True)", "算好了概率，却还是取最大的，温度和 top-k 都白设了。"),
            ("finished.all()", "finished.any()", "一批里只要有一句写完就全停了，其余的还没写完；应等全部都是结束词元。"),
            ("idx_next = torch.where(finished, eos_id, idx_next)", "pass", "写完的那几句没有填结束词元，又接着往下写；而且要所有的句子在同一步都写到结束词元才会停，多半停不下来。"),
            ("finished = idx_next == eos_id", "finished = finished & (idx_next == eos_id)", "写成了「而且」：finished 一开始全是假，永远变不成真，遇到结束词元也不停。"),
            ("                break\n        idx = torch.cat((idx, idx_next), dim=1)", "                return torch.cat((idx, idx_next), dim=1)\n        idx = torch.cat((idx, idx_next), dim=1)", "停下之前把结束词元也接了上去；它只是「到此为止」的记号，不是要写的内容。"),
            ("if eos_id is not None:", "if eos_id:", "写成了 if eos_id：编号 0 在 Python 里算假，结束词元恰好是 0 号时就不会停。"),
            ("torch.no_grad()", "torch.enable_grad()", "没有用 no_grad：生成不需要梯度，每一步都白白建了计算图。"),
        ],
    ),
    dict(
        name="save_checkpoint",
        title="存检查点",
        section="5.4",
        source="ch05/experiments/exp_resume.py",
        parts=["save_checkpoint"],
        needs=[],
        extra={},
        task="写一个函数 save_checkpoint(path, content)：先用 torch.save 写到同一个文件夹里的临时文件（名字后面加 .part），flush 并 fsync，让数据真正落盘，再用 os.replace 改名成 path。中途出现 OSError 或 RuntimeError 时，删掉临时文件，抛出 OSError；原来的 path 必须完好。",
        blanks=['path.with_name(path.name + ".part")', "torch.save(content, file)", "os.fsync(file.fileno())", "os.replace(part, path)", "part.unlink(missing_ok=True)"],
        cases=[("存取", save_good), ("写到一半出错", save_broken), ("落盘", save_synced)],
        mutants=[
            ('path.with_name(path.name + ".part")', "path", "直接写在了 path 上，没有用临时文件：写到一半出错，旧的检查点也毁了。"),
            ("os.replace(part, path)", "pass", "写完临时文件，忘了改名，检查点根本不在该在的地方。"),
            ("part.unlink(missing_ok=True)", "pass", "出错之后没有删掉临时文件，文件夹里留下半个没用的文件。"),
            ('raise OSError(f"检查点写不进 {path}（磁盘满了，或没有写的权限），请腾出空间或用 --out 换个文件夹") from error', "return", "把错误吞掉了：没有存成，训练还以为存好了。"),
            ("os.fsync(file.fileno())", "pass", "没有 fsync：数据可能还在系统的缓存里，这时断电，改了名的也是空文件。"),
        ],
    ),
    dict(
        name="load_checkpoint",
        title="读检查点",
        section="5.4",
        source="ch05/experiments/exp_resume.py",
        parts=["load_checkpoint"],
        needs=[],
        extra={},
        task="写一个函数 load_checkpoint(path)：用 torch.load 读，张量都放到 CPU 上（map_location），只读数字、不执行代码（weights_only）。文件不存在、读不出来、不是字典，或缺了 config、seed、text、model、optimizer、progress 之中的任何一项，都报 ValueError；多出别的键没有关系。",
        blanks=["path.is_file()", 'path, map_location="cpu", weights_only=True', "isinstance(content, dict)", "needed <= content.keys()"],
        cases=[("完整的", load_good), ("不对的", load_bad), ("选项", load_options)],
        mutants=[
            ("weights_only=True)", "weights_only=False)", "用了 weights_only=False：读文件的时候会执行里面夹带的代码，来路不明的文件尤其危险。"),
            (', map_location="cpu"', "", "没有写 map_location：在 GPU 上存的检查点，拿到没有 GPU 的机器上就读不了。"),
            ("not isinstance(content, dict) or not needed", "not needed", "没有检查是不是字典，读到别的东西时报的是看不懂的 AttributeError。"),
            ("<= content.keys()", "== content.keys()", "要求键一个不多：以后的版本多存一项，旧的程序就读不了；只要该有的都有就行。"),
            ("<= content.keys()", "& content.keys()", "只要有一个键对得上就放行，缺了优化器也不知道，到用的时候才出错。"),
            ("except Exception:", "except OSError:", "只接住了 OSError：损坏的文件能引出各种异常，读者看到的是一大段英文。"),
        ],
    ),
    dict(
        name="rng_state",
        title="随机数的状态",
        section="5.4",
        source="ch05/experiments/exp_resume.py",
        parts=["get_rng_state", "set_rng_state"],
        needs=[],
        extra={},
        task="写两个函数，续训时要用。get_rng_state(device) 返回一个字典：键 \"cpu\" 是 torch.get_rng_state()；device 不是 CPU 时，再加一项，键是 device.type，值从 torch.cuda、torch.mps 这样的模块里取（用 getattr）。"
        "set_rng_state(state, device) 把两者都恢复；字典里没有这种设备的那一项，就只恢复 CPU 的。",
        blanks=["torch.get_rng_state()", "getattr(torch, device.type).get_rng_state()", 'torch.set_rng_state(state["cpu"])', "getattr(torch, device.type).set_rng_state(state[device.type])"],
        cases=[("CPU", rng_restored), ("别的设备", rng_device)],
        mutants=[
            ('torch.set_rng_state(state["cpu"])', "torch.manual_seed(123)", "重新设了一遍种子，回到的是最开头，而不是记下的那一刻。"),
            ('torch.set_rng_state(state["cpu"])', "pass", "没有恢复 CPU 的发生器：打乱数据用的就是它，续训时次序会不同。"),
            ('if device.type != "cpu":', "if False:", "没有记下计算设备的状态：dropout 用的是那里的发生器，续训时丢掉的就不是同样的那些了。"),
            ("if device.type in state and", "if", "没有看字典里有没有这一项：在 CPU 上存的检查点拿到 GPU 上接着训练，就会报 KeyError。"),
            ("set_rng_state(state[device.type])", 'set_rng_state(state["cpu"])', "拿 CPU 的状态去恢复计算设备，两种发生器的状态不通用。"),
        ],
    ),
    dict(
        name="gpt2_shapes",
        title="GPT-2 权重的形状",
        section="5.5",
        source="ch05/main/example_05_openai_weights.py",
        parts=["gpt2_shapes"],
        needs=[],
        extra={},
        task="写一个函数 gpt2_shapes(settings)，settings 有 n_vocab、n_ctx、n_embd（记作 d）、n_head、n_layer，返回「名字 → 形状」的字典：wte.weight (V, d)、wpe.weight (n_ctx, d)，最后的 ln_f.weight、ln_f.bias 都是 (d,)；"
        "第 i 块的名字以 h.i. 开头，有 ln_1、attn.c_attn（Q、K、V 并排）、attn.c_proj、ln_2、mlp.c_fc（升到 4d）、mlp.c_proj（降回 d），各有 weight 和 bias。线性层的权重是（输入，输出）。",
        blanks=["(d, 3 * d)", "(4 * d, d)", '(settings["n_vocab"], d)', 'range(settings["n_layer"])', '{"ln_f.weight": (d,), "ln_f.bias": (d,)}'],
        cases=[("名字与形状", shapes_all), ("124M", shapes_124m)],
        mutants=[
            ("(d, 3 * d)", "(3 * d, d)", "c_attn 写成了（输出，输入）：那是 nn.Linear 的存法，OpenAI 存的是（输入，输出），算 x @ w。"),
            ("(4 * d, d)", "(d, 4 * d)", "mlp.c_proj 是降维，从 4d 回到 d，写成了与 c_fc 一样的升维。"),
            ('"attn.c_attn.bias": (3 * d,)', '"attn.c_attn.bias": (d,)', "c_attn 的偏置也是 Q、K、V 三份并排，共 3d 个数。"),
            ('"wpe.weight": (settings["n_ctx"], d)', '"wpe.weight": (settings["n_vocab"], d)', "位置嵌入一行对一个位置，行数是上下文长度 n_ctx，不是词表大小。"),
            ('shapes | {"ln_f.weight": (d,), "ln_f.bias": (d,)}', "shapes", "漏了最后的层归一化 ln_f。"),
            ('range(settings["n_layer"])', 'range(settings["n_head"] + 1)', "块数取错了：有几块看 n_layer，n_head 是每块里的头数。"),
        ],
    ),
    dict(
        name="assign",
        title="装一个参数",
        section="5.5",
        source="ch05/main/example_05_openai_weights.py",
        parts=["assign"],
        needs=[],
        extra={},
        task="写一个函数 assign(left, right)：left 是模型里原来的参数，right 是 NumPy 数组。left 是 None，或两者形状不同，报 ValueError；否则返回一个新的 nn.Parameter，数值来自 right（复制一份，不共用内存），数据类型和设备与 left 相同。",
        blanks=["left is None", "left.shape != right.shape", "nn.Parameter(torch.tensor(right, dtype=left.dtype, device=left.device))"],
        cases=[("新的参数", assign_good), ("数据类型与设备", assign_keeps), ("拒绝", assign_refuses)],
        mutants=[
            ("left.shape != right.shape", "False", "没有检查形状：装错了也不吭声，模型只是莫名其妙地说胡话。"),
            ("left.shape != right.shape", "left.numel() != right.size", "只比了个数，没有比形状：忘了转置的矩阵，个数也是对的。"),
            ("nn.Parameter(torch.tensor(right, dtype=left.dtype, device=left.device))", "torch.tensor(right, dtype=left.dtype, device=left.device)", "返回的是普通张量，不是 nn.Parameter，赋值给模型的层会报错，优化器也找不到它。"),
            ("dtype=left.dtype, ", "", "没有跟着模型的数据类型走：数组是 float64 时，参数也成了 float64，MPS 上根本用不了。"),
            (", device=left.device", "", "没有放到模型所在的设备上，前向时会报错说张量不在一处。"),
            ("torch.tensor(right, dtype=left.dtype, device=left.device)", "torch.from_numpy(right).to(left.device, left.dtype)", "from_numpy 与数组共用内存：数据类型相同时没有复制，改了数组，模型的参数也跟着变。"),
            ("if left is None:", "if False:", "没有考虑模型里没有这个参数（建模型时 qkv_bias=False），报的是看不懂的 AttributeError。"),
        ],
    ),
    dict(
        name="load_weights_into_gpt",
        title="装入 OpenAI 的权重",
        section="5.5",
        source="ch05/main/example_05_openai_weights.py",
        parts=["load_weights_into_gpt"],
        needs=["assign"],
        extra={},
        task="写一个函数 load_weights_into_gpt(gpt, params)，用 assign 把权重一个个装进 GPTModel；块数不同时报 ValueError。params[\"wte\"] 装进词嵌入和输出层，params[\"wpe\"] 装进位置嵌入，params[\"g\"]、params[\"b\"] 是最后层归一化的 scale 和 shift。"
        "每一块 params[\"blocks\"][i]：[\"attn\"][\"c_attn\"] 的 \"w\" (d, 3d) 和 \"b\" (3d,) 沿最后一维切成 Q、K、V 三份，[\"attn\"][\"c_proj\"] 是 out_proj，[\"mlp\"][\"c_fc\"]、[\"mlp\"][\"c_proj\"] 是 ff.layers[0] 和 ff.layers[2]，[\"ln_1\"]、[\"ln_2\"] 的 \"g\"、\"b\" 是 norm1、norm2 的 scale、shift。线性层的权重都要转置。",
        blanks=['np.split(attn["c_attn"]["w"], 3, axis=-1)', "assign(linear.weight, w.T)", '(block.ff.layers[2], mlp["c_proj"])', '(block.norm2, block_params["ln_2"])', 'assign(gpt.final_norm.scale, params["g"])', 'assign(gpt.out_head.weight, params["wte"])'],
        cases=[("每个参数", weights_loaded), ("输出层", weights_apart), ("对不上的", weights_refused)],
        mutants=[
            ("w.T)  # (d, d)", "w)  # (d, d)", "Q、K、V 忘了转置：它们是方阵，形状照样对得上，不报错，模型却在说胡话。"),
            ('part["w"].T', 'part["w"]', "out_proj 和前馈网络忘了转置：OpenAI 存的是（输入，输出），nn.Linear 存的是（输出，输入）。"),
            ('np.split(attn["c_attn"]["w"], 3, axis=-1)', 'np.split(attn["c_attn"]["w"].reshape(3 * len(attn["c_attn"]["w"]), -1), 3, axis=0)', "沿第一维切了三份：Q、K、V 是左右并排的，要沿最后一维切，否则三样混在一起。"),
            ("(block.att.W_query, block.att.W_key, block.att.W_value)", "(block.att.W_key, block.att.W_query, block.att.W_value)", "Q 和 K 对调了：c_attn 里的次序是 Q、K、V，形状都相同，装反了没有人知道。"),
            ("(block.att.W_query, block.att.W_key, block.att.W_value)", "(block.att.W_query, block.att.W_value, block.att.W_key)", "K 和 V 对调了：c_attn 里的次序是 Q、K、V，形状都相同，装反了没有人知道。"),
            ("linear.bias = assign(linear.bias, b)", "pass", "没有装 Q、K、V 的偏置，它们还是随机的。"),
            ('(block.norm1, block_params["ln_1"]), (block.norm2, block_params["ln_2"])', '(block.norm2, block_params["ln_1"]), (block.norm1, block_params["ln_2"])', "两个层归一化装反了：ln_1 在注意力前面，ln_2 在前馈网络前面。"),
            ('gpt.out_head.weight = assign(gpt.out_head.weight, params["wte"])', "pass", "输出层没有装：OpenAI 拿词嵌入当输出层用，要把 wte 再装一份进去。"),
            ('assign(gpt.out_head.weight, params["wte"])', "gpt.tok_emb.weight", "输出层与词嵌入成了同一个参数；这里要的是一份拷贝，之后训练时两边各改各的。"),
            ('len(gpt.trf_blocks) != len(params["blocks"])', "False", "没有比较块数：zip 以短的为准，多出来的块悄悄地没有装。"),
        ],
    ),
    dict(
        name="gpt2_by_hand",
        title="不用 nn.Module 的 GPT-2",
        section="5.5",
        source="ch05/main/example_05_openai_weights.py",
        parts=["gpt2_by_hand"],
        needs=[],
        extra={},
        task="写一个函数 gpt2_by_hand(ids, params, n_head)：不用 nn.Module，直接用 params 里的 NumPy 数组算出 logits。ids 是 (t,)，返回 (t, V)。步骤：词嵌入加位置嵌入；每一块先层归一化，乘 c_attn 得到 Q、K、V，分成 n_head 个头做因果注意力（除以 √k，k 是每个头的维度），拼起来乘 c_proj，残差相加；"
        "再层归一化、c_fc、GELU（tanh 近似）、mlp 的 c_proj，残差相加；最后层归一化，再与词嵌入的转置相乘。",
        blanks=["triu(diagonal=1)", 'torch.from_numpy(params["wpe"][:t])', "dense(norm(x, block[\"ln_1\"]), block[\"attn\"][\"c_attn\"]).chunk(3, dim=-1)", "q @ k.T / k.shape[-1] ** 0.5 + future", "torch.cat(heads, dim=-1)", 'approximate="tanh"', "norm(x, params) @ wte.T"],
        cases=[("logits", hand_logits), ("因果", hand_causal)],
        mutants=[
            (" + future", "", "没有加因果掩码，每个词元都看得到后面的词元。"),
            ("triu(diagonal=1)", "triu(diagonal=0)", "掩码从对角线开始，连自己也看不到：第一行全是 -inf，softmax 之后是 nan。"),
            ("q @ k.T / k.shape[-1] ** 0.5", "q @ k.T", "忘了除以 √k，分数太大，softmax 会挤成接近 one-hot。"),
            ("k.shape[-1] ** 0.5", "x.shape[-1] ** 0.5", "除的是 √d，应是每个头的维度 k 的平方根；只有一个头时两者才相同。"),
            ("x = x + dense(torch.cat(heads, dim=-1)", "x = dense(torch.cat(heads, dim=-1)", "注意力之后没有残差相加，前面的内容都丢了。"),
            ("x = x + dense(hidden", "x = dense(hidden", "前馈网络之后没有残差相加，前面的内容都丢了。"),
            (', approximate="tanh"', "", "用了精确的 GELU：GPT-2 训练时用的是 tanh 近似，差得不多，但层层累积，logits 就不同了。"),
            (' + torch.from_numpy(params["wpe"][:t])', "", "没有加位置嵌入，模型分不清词元的先后。"),
            ("norm(x, params) @ wte.T", "x @ wte.T", "漏了最后的层归一化。"),
            ('dense(norm(x, block["ln_2"]), block["mlp"]["c_fc"])', 'dense(norm(x, block["ln_1"]), block["mlp"]["c_fc"])', "前馈网络前面用错了层归一化，应是 ln_2。"),
        ],
    ),
]
