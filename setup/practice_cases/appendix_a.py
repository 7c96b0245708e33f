"""手敲练习 · 附录 A　每个组件的任务、检查和典型错误

格式与怎样添加，见 setup/practice.md。检查函数只拿到一个 ns：被检查的文件里定义的一切，用 ns.名字 取。
"""

import contextlib
import os
import platform
from unittest import mock

X_TRAIN = [[-1.2, 3.1], [-0.9, 2.9], [-0.5, 2.6], [2.3, -1.1], [2.7, -1.5]]  # 书上的五个样本
Y_TRAIN = [0, 0, 0, 1, 1]


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


def toy_dataset():
    """书上的五个样本。"""
    import torch
    from torch.utils.data import TensorDataset

    return TensorDataset(torch.tensor(X_TRAIN), torch.tensor(Y_TRAIN))


# ---- NeuralNetwork、ToyDataset ----
def network_output(ns):
    """输出：与书上同一个种子；一个样本、几个样本、别的大小。"""
    import torch

    torch.manual_seed(123)
    book = ns.NeuralNetwork(50, 3)
    x = torch.linspace(-1, 1, 200).view(4, 50)  # (b, num_inputs)
    return {"几个样本": book(x), "一个样本": book(x[:1]), "2 进 5 出": ns.NeuralNetwork(2, 5)(x[:, :2])}


def network_parameters(ns):
    """参数的名字、形状、个数。"""
    model = ns.NeuralNetwork(50, 3)
    return {"名字与形状": {name: list(parameter.shape) for name, parameter in model.state_dict().items()}, "个数": sum(p.numel() for p in model.parameters())}


def network_gradient(ns):
    """每个参数的梯度。"""
    import torch

    torch.manual_seed(123)
    model = ns.NeuralNetwork(3, 2)
    model(torch.linspace(-2, 2, 12).view(4, 3)).pow(2).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def toy_samples(ns):
    """样本数和每个样本。"""
    import torch

    dataset = ns.ToyDataset(torch.tensor(X_TRAIN), torch.tensor(Y_TRAIN))
    return {"样本数": len(dataset), "第 0 个": tuple(dataset[0]), "第 3 个": tuple(dataset[3]), "最后一个": tuple(dataset[-1])}


def toy_batches(ns):
    """能被 DataLoader 凑成批。"""
    import torch
    from torch.utils.data import DataLoader

    batches = list(DataLoader(ns.ToyDataset(torch.tensor(X_TRAIN), torch.tensor(Y_TRAIN)), batch_size=2))
    return {"批数": len(batches), "特征": [features for features, _ in batches], "标签": [labels for _, labels in batches]}


# ---- compute_accuracy ----
def table_classifier(drop=0.0):
    """查表的假分类器：特征本身就是三类的分数；seen 记下每次前向时的模式。"""
    import torch
    from torch import nn

    class TableClassifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.seen = nn.Dropout(drop), []

        def forward(self, x):
            self.seen.append(("训练模式" if self.training else "评估模式", "记梯度" if torch.is_grad_enabled() else "不记梯度"))
            return self.drop(x)

    return TableClassifier()


def scored_batches(sizes):
    """几批随机的（三类的分数，标签）。"""
    import torch

    generator = torch.Generator().manual_seed(7)
    return [(torch.randn(n, 3, generator=generator), torch.randint(0, 3, (n,), generator=generator)) for n in sizes]


def accuracy_values(ns):
    """准确率：每批一样大、大小不同、全对。"""
    import torch

    sure = [(torch.eye(3), torch.tensor([0, 1, 2]))]
    return {"一样大的批": ns.compute_accuracy(table_classifier(), scored_batches([4, 4])), "最后一批不满": ns.compute_accuracy(table_classifier(), scored_batches([3, 3, 1])), "全对": ns.compute_accuracy(table_classifier(), sure)}


def accuracy_modes(ns):
    """评估时关掉 dropout，不记梯度。"""
    import torch

    model = table_classifier(drop=0.9)
    model.train()
    torch.manual_seed(5)
    return {"准确率": ns.compute_accuracy(model, scored_batches([9, 9])), "每次前向时": model.seen}


# ---- train_on_device ----
def train_losses(ns):
    """六步的损失，与书上的相同：0.75 0.65 0.44 0.13 0.03 0.00。"""
    import torch
    from torch.utils.data import DataLoader

    loader = DataLoader(toy_dataset(), batch_size=2, shuffle=True, drop_last=True)
    torch.manual_seed(9)  # 之前用过多少随机数，不应影响结果
    with swapped(ns.train, train_loader=loader):
        model, losses = ns.train(torch.device("cpu"))
    return {"损失": losses, "印出来的样子": [f"{loss:.2f}" for loss in losses], "训练之后的最后一层": model.layers[4].weight.detach()}


def train_moved(ns):
    """模型和每一批都搬到指定的设备上；用会记账的假数据和假设备来查。"""
    import torch

    moved = []

    class Watched:
        def __init__(self, tensor, name):
            self.tensor, self.name = tensor, name

        def to(self, device):
            moved.append((self.name, str(device)))
            return self.tensor

    class Network(ns.NeuralNetwork):
        def to(self, *args, **kwargs):
            moved.append(("模型", str(args[0] if args else kwargs["device"])))
            return super().to(*args, **kwargs)

    loader = [(Watched(torch.tensor(X_TRAIN[:2]), "特征"), Watched(torch.tensor(Y_TRAIN[:2]), "标签"))]
    with swapped(ns.train, train_loader=loader, NeuralNetwork=Network):
        _, losses = ns.train("cpu")
    return {"搬了": sorted(moved), "损失": losses}


# ---- ddp_setup、prepare_dataset、train_alone ----
def setup_calls(ns, device, system="Linux", nccl=True, environment=None):
    """调用 ddp_setup，记下它怎样加入进程组、设了哪些环境变量；不真的联网。"""
    import torch
    import torch.distributed as dist

    calls = []

    def join(backend=None, rank=None, world_size=None, **_):
        calls.append({"通信": backend, "rank": rank, "world_size": world_size})

    kept = {name: value for name, value in os.environ.items() if name not in ("MASTER_ADDR", "MASTER_PORT", "USE_LIBUV")}
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, kept | (environment or {}), clear=True))
        stack.enter_context(mock.patch.object(dist, "init_process_group", join))
        stack.enter_context(mock.patch.object(dist, "is_nccl_available", lambda: nccl))
        stack.enter_context(mock.patch.object(platform, "system", lambda: system))
        stack.enter_context(mock.patch.object(torch.cuda, "set_device", lambda each: calls.append({"选显卡": str(each)})))
        ns.ddp_setup(1, 4, torch.device(device))
        return {"调用": calls, "环境变量": {name: os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT", "USE_LIBUV")}}


def setup_cpu(ns):
    """在 CPU 上：gloo。"""
    return setup_calls(ns, "cpu")


def setup_cuda(ns):
    """在显卡上：有 nccl 用 nccl，没有就用 gloo；都要选好自己的那一块。"""
    return {"有 nccl": setup_calls(ns, "cuda:1"), "没有 nccl": setup_calls(ns, "cuda:1", nccl=False)}


def setup_environment(ns):
    """torchrun 设好的地址和端口不许改；Windows 上关掉 libuv。"""
    given = {"MASTER_ADDR": "node7", "MASTER_PORT": "29500"}
    return {"torchrun 设好了": setup_calls(ns, "cpu", environment=given), "Windows": setup_calls(ns, "cpu", system="Windows")}


def prepared(ns, rank, world_size):
    """装作是 world_size 个进程里的第 rank 个，准备数据。"""
    import torch
    import torch.distributed as dist

    torch.manual_seed(123)
    with mock.patch.object(dist, "get_world_size", lambda *_: world_size), mock.patch.object(dist, "get_rank", lambda *_: rank):
        return ns.prepare_dataset()


def prepare_batches(ns):
    """每个进程分到的训练数据；测试数据人人都有全部。"""
    result = {}
    for rank, world_size in [(0, 1), (0, 2), (1, 2)]:
        train_loader, test_loader = prepared(ns, rank, world_size)
        result[f"{world_size} 个进程里的第 {rank} 个，训练"] = [[features, labels] for features, labels in train_loader]
        result[f"{world_size} 个进程里的第 {rank} 个，测试"] = [[features, labels] for features, labels in test_loader]
    return result


def prepare_many(ns):
    """进程多于 2 个：训练数据复制几份，加一点噪声。"""
    train_loader, _ = prepared(ns, 3, 4)
    again, _ = prepared(ns, 0, 4)
    features, labels = zip(*(train_loader.dataset[i] for i in range(len(train_loader.dataset))))
    same = all((train_loader.dataset[i][0] == again.dataset[i][0]).all() for i in range(len(train_loader.dataset)))
    return {"样本数": len(features), "特征": list(features), "标签": list(labels), "各进程造出来的一样": bool(same), "批数": len(train_loader)}


def prepare_epochs(ns):
    """下一轮重新打乱（sampler 要 set_epoch）。"""
    train_loader, _ = prepared(ns, 0, 2)
    orders = []
    for epoch in range(3):
        train_loader.sampler.set_epoch(epoch)
        orders.append(list(train_loader.sampler))
    return {"三轮的次序": orders}


def alone(ns, world_size, num_epochs=2):
    """从同一个起点训练一个小模型，返回训练后的参数。"""
    import torch

    torch.manual_seed(123)
    model = torch.nn.Linear(2, 2)
    return ns.train_alone(model, toy_dataset(), world_size, num_epochs), model


def alone_values(ns):
    """训练之后的参数：几个进程、几轮。"""
    result = {f"{world_size} 个进程，{epochs} 轮": alone(ns, world_size, epochs)[0] for world_size, epochs in [(1, 1), (1, 3), (2, 1), (2, 3)]}
    flat, model = alone(ns, 2)
    return result | {"要不要梯度": flat.requires_grad, "模型自己也被训练了": model.weight.detach()}


def alone_by_hand(ns):
    """与手写的训练对照：把各进程的批接成一个大批。"""
    import torch
    from torch.utils.data.distributed import DistributedSampler

    flat, _ = alone(ns, 2)
    torch.manual_seed(123)
    model, dataset = torch.nn.Linear(2, 2), toy_dataset()
    for epoch in range(2):
        orders = []
        for rank in range(2):
            sampler = DistributedSampler(dataset, num_replicas=2, rank=rank)
            sampler.set_epoch(epoch)
            orders.append(list(sampler)[:2])  # 每个进程 3 个样本，一批 2 个，最后不满的一批丢掉
        rows = sum(orders, [])
        loss = torch.nn.functional.cross_entropy(model(dataset.tensors[0][rows]), dataset.tensors[1][rows])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients):
                parameter -= 0.5 * gradient
    return {"与手写的相同": torch.allclose(flat, torch.cat([model.weight.flatten(), model.bias]), atol=1e-6)}


COMPONENTS = [
    dict(
        name="NeuralNetwork",
        title="两个隐藏层的网络",
        section="A.5",
        source="appendix-A/main/example_03_multilayer_network.py",
        parts=["NeuralNetwork"],
        needs=[],
        extra={},
        task="写一个 nn.Module 的子类 NeuralNetwork(num_inputs, num_outputs)：self.layers 是一个 nn.Sequential，依次是 num_inputs → 30 的线性层、ReLU、30 → 20 的线性层、ReLU、20 → num_outputs 的线性层。forward(x) 把 (b, num_inputs) 变成 (b, num_outputs) 的 logits。",
        blanks=["super().__init__()", "nn.Linear(num_inputs, 30)", "nn.Linear(30, 20)", "nn.Linear(20, num_outputs)", "self.layers(x)"],
        cases=[("输出", network_output), ("参数", network_parameters), ("梯度", network_gradient)],
        mutants=[
            ("super().__init__()", "pass", "忘了 super().__init__()：登记层和参数的本子还没有建好，一赋值给 self.layers 就报错。"),
            ("nn.Linear(num_inputs, 30),\n            # 没有非线性的激活函数，叠多少个线性层都等于一个线性层，只能画直线来分类。\n            nn.ReLU(),", "nn.Linear(num_inputs, 30),\n            nn.Identity(),\n", "第一层之后没有激活函数：两个线性层叠在一起，仍只是一个线性层。"),
            ("nn.ReLU(),\n            nn.Linear(30, 20)", "nn.Sigmoid(),\n            nn.Linear(30, 20)", "第一个激活函数用了 Sigmoid；书上用的是 ReLU，大于 0 的原样通过，梯度不会越传越小。"),
            ("nn.Linear(20, num_outputs),", "nn.Linear(20, num_outputs), nn.ReLU(),", "最后多加了 ReLU：分数可正可负，负的都被改成 0，就分不出高低了。"),
            ("nn.Linear(20, num_outputs),", "nn.Linear(20, num_outputs), nn.Softmax(dim=1),", "最后多加了 softmax：训练用的 cross_entropy 要的是 logits，它自己会做，做两遍学得又慢又差。"),
            ("nn.Linear(20, num_outputs)", "nn.Linear(20, num_outputs, bias=False)", "最后一层没有偏置，少了 num_outputs 个参数。"),
            ("self.layers(x)", "self.layers[:-1](x)", "最后一层没有用上，输出的是 20 个数，不是 num_outputs 个。"),
        ],
    ),
    dict(
        name="ToyDataset",
        title="玩具数据集",
        section="A.6",
        source="appendix-A/main/example_04_data_and_training.py",
        parts=["ToyDataset"],
        needs=[],
        extra={},
        task="写一个 Dataset 的子类 ToyDataset(X, y)：X 是 (n, f) 的特征，y 是 (n,) 的类别编号，存成 self.features 和 self.labels。__getitem__(index) 返回第 index 个样本的（特征，标签），都没有批的那一维；__len__() 返回样本数。",
        blanks=["self.features[index]", "self.labels[index]", "one_x, one_y", "self.labels.shape[0]"],
        cases=[("样本", toy_samples), ("凑成批", toy_batches)],
        mutants=[
            ("self.labels.shape[0]", "self.features.shape[1]", "返回的是特征数，不是样本数；DataLoader 靠它知道一轮有几批。"),
            ("self.labels.shape[0]", "self.labels.shape[0] - 1", "少报了一个样本：编号从 0 起，但总数不用减 1，否则最后一个永远取不到。"),
            ("return one_x, one_y", "return one_y, one_x", "特征和标签的次序反了，训练时拿到的输入其实是标签。"),
            ("self.features[index]", "self.features[index : index + 1]", "切片留下了批的那一维：凑批是 DataLoader 的事，这里只给一个样本。"),
            ("self.features[index]", "self.features", "没有取第 index 个，每次都返回全部的特征。"),
            ("self.labels[index]", "self.labels[index].float()", "标签变成了小数：cross_entropy 拿它当下标用，要的是整数。"),
        ],
    ),
    dict(
        name="compute_accuracy",
        title="玩具网络的准确率",
        section="A.7",
        source="appendix-A/main/example_04_data_and_training.py",
        parts=["compute_accuracy"],
        needs=[],
        extra={},
        task="写一个函数 compute_accuracy(model, dataloader)：切换到评估模式，对每一批（特征，标签）不记梯度地算出 logits (b, c)，argmax 得到预测；返回全部样本里猜对的比例，是普通的小数。",
        blanks=["model.eval()", "torch.no_grad()", "torch.argmax(logits, dim=1)", "torch.sum(labels == predictions)", "len(labels)", "(correct / total_examples).item()"],
        cases=[("数值", accuracy_values), ("模式", accuracy_modes)],
        mutants=[
            ("model = model.eval()", "pass", "没有切换到评估模式：模型里若有 dropout，准确率会忽高忽低。"),
            ("torch.no_grad()", "torch.enable_grad()", "没有用 no_grad：评估不需要梯度，白白建了计算图，又慢又占内存。"),
            ("dim=1)", "dim=0)", "argmax 的方向不对：沿着批比，得到的是哪个样本的分数最高；要沿着类别比。"),
            ("total_examples += len(labels)", "total_examples += 1", "除以的是批数，不是样本数，准确率会大于 1。"),
            ("(correct / total_examples).item()", "correct / total_examples", "返回的是张量，不是普通的小数。"),
            ("correct += torch.sum(labels == predictions)", "correct = torch.sum(labels == predictions)", "只留下了最后一批猜对的个数，前面的没有累加。"),
            ("torch.sum(labels == predictions)", "torch.sum(labels == predictions) / len(labels)", "加的是每批的准确率，不是猜对的个数，再除以样本数就小得离谱。"),
        ],
    ),
    dict(
        name="train_on_device",
        title="玩具训练循环",
        section="A.9.2",
        source="appendix-A/main/example_05_devices.py",
        parts=["train"],
        needs=["NeuralNetwork"],
        extra={},
        task="全局变量 train_loader 每批给出（特征，标签），检查时会给出。写一个函数 train(device)：设种子 123，建 NeuralNetwork(num_inputs=2, num_outputs=2)，搬到 device 上，优化器是 SGD，学习率 0.5；训练 3 轮：切换到训练模式，每一批搬到 device 上，前向，算交叉熵，清梯度，反向，更新。返回（模型，每一步损失的列表），损失是普通的小数。",
        blanks=["torch.manual_seed(123)", "model.to(device)", "torch.optim.SGD(model.parameters(), lr=0.5)", "features.to(device), labels.to(device)", "F.cross_entropy(logits, labels)", "optimizer.zero_grad()", "loss.backward()", "optimizer.step()"],
        cases=[("损失", train_losses), ("搬到设备上", train_moved)],
        mutants=[
            ("optimizer.zero_grad()", "pass", "忘了 zero_grad：backward 是往旧梯度上累加，第 3 步起就与书上不同了。"),
            ("optimizer.step()", "pass", "忘了 optimizer.step()：梯度求出来了，却没有拿去更新，权重一直是初始的。"),
            ("loss.backward()", "loss.backward(); optimizer.zero_grad()", "清梯度的位置不对，写在了反向和更新之间：刚求出的梯度还没用就清掉了。"),
            ("F.cross_entropy(logits, labels)", "F.cross_entropy(torch.softmax(logits, dim=1), labels)", "多做了一次 softmax：cross_entropy 要的是 logits，它自己会做。"),
            ("torch.manual_seed(123)", "pass", "没有设种子：初始权重和打乱的次序取决于之前用过多少随机数，数字与书上对不上。"),
            ("features, labels = features.to(device), labels.to(device)", "features, labels = features.to(device), labels.to('meta')", "标签搬到了别的设备上，与分数不在一处。"),
            ("model = model.to(device)", "pass", "没有把模型搬到 device 上，它还在 CPU 上，与数据不在一处。"),
            ("losses.append(loss.item())", "losses.append(loss)", "没有 .item()：存的是张量，整张计算图一直留在内存里。"),
            ("lr=0.5", "lr=0.05", "学习率不是 0.5，走同样的六步，离学会还差得远。"),
        ],
    ),
    dict(
        name="ddp_setup",
        title="加入进程组",
        section="A.9.3",
        source="appendix-A/main/ddp_torchrun.py",
        parts=["ddp_setup"],
        needs=[],
        extra={},
        task="写一个函数 ddp_setup(rank, world_size, device)：环境变量 MASTER_ADDR、MASTER_PORT 没有设时，设成 localhost 和 0（已经设了就不动）；Windows 上（platform.system()）把 USE_LIBUV 设成 0。device 是 cuda 而且 dist.is_nccl_available() 时用 nccl，否则用 gloo，"
        "调用 dist.init_process_group(通信方式, rank=rank, world_size=world_size)；在显卡上还要 torch.cuda.set_device(device)。",
        blanks=['os.environ.setdefault("MASTER_ADDR", "localhost")', 'device.type == "cuda" and dist.is_nccl_available()', "backend, rank=rank, world_size=world_size", "torch.cuda.set_device(device)"],
        cases=[("CPU", setup_cpu), ("显卡", setup_cuda), ("环境变量", setup_environment)],
        mutants=[
            ('os.environ.setdefault("MASTER_ADDR", "localhost")', 'os.environ["MASTER_ADDR"] = "localhost"', "把 torchrun 设好的地址盖掉了：几台机器时，别的机器都来不了；setdefault 只在没有设的时候才设。"),
            ('"nccl" if device.type == "cuda" and dist.is_nccl_available() else "gloo"', '"nccl"', "总是用 nccl：它只在显卡上能用，CPU 上会报错，要用 gloo。"),
            (" and dist.is_nccl_available()", "", "没有看 nccl 能不能用：Windows 上的显卡也没有 nccl，要用 gloo。"),
            ("rank=rank, world_size=world_size", "rank=0, world_size=world_size", "每个进程都报自己是 0 号，凑不齐人数，大家一直等下去。"),
            ("torch.cuda.set_device(device)", "pass", "没有选好自己的那块显卡，几个进程都挤在第 0 块上。"),
            ('os.environ["USE_LIBUV"] = "0"', "pass", "Windows 版 PyTorch 没有带 libuv，不关掉就会报错。"),
            ("rank=rank, world_size=world_size", "rank=world_size, world_size=rank", "自己的编号和进程总数写反了。"),
        ],
    ),
    dict(
        name="prepare_dataset",
        title="给各进程分数据",
        section="A.9.3",
        source="appendix-A/main/ddp_torchrun.py",
        parts=["prepare_dataset"],
        needs=["ToyDataset"],
        extra={},
        task="写一个函数 prepare_dataset()：训练特征是 [[-1.2, 3.1], [-0.9, 2.9], [-0.5, 2.6], [2.3, -1.1], [2.7, -1.5]]，标签 [0, 0, 0, 1, 1]；测试特征是 [[-0.8, 2.8], [2.6, -1.6]]，标签 [0, 1]。进程数 dist.get_world_size() 大于 2 时，把训练特征加上 0.1 倍的正态噪声（torch.randn_like）复制这么多份，接起来，标签也重复这么多遍。"
        "用 ToyDataset 包好，训练的 DataLoader 每批 2 个、不打乱、丢掉不满的一批、sampler 是 DistributedSampler；测试的每批 2 个、不打乱、没有 sampler。返回（训练，测试）。",
        blanks=["factor > 2", "y_train.repeat(factor)", "drop_last=True", "DistributedSampler(train_ds)", "return train_loader, test_loader"],
        cases=[("每个进程的数据", prepare_batches), ("进程多于 2 个", prepare_many), ("重新打乱", prepare_epochs)],
        mutants=[
            ("sampler=DistributedSampler(train_ds)", "sampler=None", "没有用 DistributedSampler：每个进程拿到的都是全部数据，做的是同样的事，等于白用了几个进程。"),
            ("sampler=DistributedSampler(train_ds)", "sampler=DistributedSampler(train_ds, shuffle=False)", "DistributedSampler 关掉了打乱：每一轮的次序都相同，set_epoch 也没有用了。"),
            ("shuffle=False,  # 打乱", "shuffle=True,  # 打乱", "shuffle 和 sampler 不能一起用，会报错：打乱交给 sampler 去做。"),
            ("drop_last=True", "drop_last=False", "没有丢掉最后不满的一批：各进程的批不一样大，梯度的平均就不等于全局的平均了。"),
            ("y_train.repeat(factor)", "y_train.repeat_interleave(factor)", "标签重复的次序不对：特征是整份整份接起来的，标签也要整份重复，否则对不上号。"),
            ("X_train + torch.randn_like(X_train) * 0.1", "X_train", "复制出来的几份一模一样，没有加噪声。"),
            ("batch_size=2, shuffle=False)", "batch_size=2, shuffle=False, sampler=DistributedSampler(ToyDataset(X_test, y_test)))", "测试数据也分给了各个进程，每个进程只在一部分上算准确率；书上是每个进程都测全部。"),
        ],
    ),
    dict(
        name="train_alone",
        title="对照：不用 DDP",
        section="A.9.3",
        source="appendix-A/main/ddp_torchrun.py",
        parts=["train_alone"],
        needs=[],
        extra={},
        task="写一个函数 train_alone(model, train_ds, world_size, num_epochs)：一个进程，算出 DDP 应得的结果。SGD，学习率 0.5；每一轮给 world_size 个进程各建一个 DistributedSampler（num_replicas=world_size，rank 从 0 数起）并 set_epoch，各建一个每批 2 个、丢掉不满一批的 DataLoader；每一步把各进程的那一批接成一个大批，清梯度、算交叉熵、反向、更新。返回排成一行的全部参数 (p,)，不带计算图。",
        blanks=["DistributedSampler(train_ds, num_replicas=world_size, rank=rank)", "sampler.set_epoch(epoch)", "torch.cat([features for features, _ in batches])", "optimizer.zero_grad()", "F.cross_entropy(model(features), labels)", "nn.utils.parameters_to_vector(model.parameters())"],
        cases=[("参数", alone_values), ("与手写的对照", alone_by_hand)],
        mutants=[
            ("sampler.set_epoch(epoch)", "pass", "没有 set_epoch：每一轮的次序都相同，sampler 只看自己的种子加轮数。"),
            ("rank=rank)", "rank=0)", "几个 sampler 都是 0 号，接起来的是同样的样本，重复了几遍。"),
            ("num_replicas=world_size", "num_replicas=world_size + 1", "进程数不对，每个进程分到的样本就少了。"),
            ("optimizer.zero_grad()", "pass", "忘了 zero_grad：backward 是往旧梯度上累加。"),
            ("F.cross_entropy(model(features), labels)", 'F.cross_entropy(model(features), labels, reduction="sum")', "损失没有平均：DDP 平均的是各进程的平均损失，也就是全局的平均。"),
            ("torch.cat([features for features, _ in batches])", "torch.cat([features for features, _ in batches][::-1])", "特征和标签接的次序不同，两者对不上号。"),
            ("drop_last=True, sampler", "drop_last=False, sampler", "没有丢掉最后不满的一批，比 DDP 多走了一步。"),
            (".detach()", "", "返回的参数还带着计算图，拿去比较时会多占内存，也不能直接变成 NumPy 数组。"),
        ],
    ),
]
