"""附录 A · A.9.3 节　多进程训练：DistributedDataParallel（DDP）

每个进程一份完整的模型、一份不同的数据；每一步反向时各进程的梯度取平均，于是大家走同样的一步，参数始终相同。

读完、敲完这个脚本，你应该能不看书回答：
    1. DDP 在哪一行、用什么办法让各进程的参数保持相同？
    2. DistributedSampler 怎样分数据？5 个样本分给 2 个进程，为什么有一个样本出现两次？
    3. 2 个进程、每批 2 个，与 1 个进程、一批 4 个，为什么得到同样的模型？

运行：
    torchrun --nproc_per_node=2 appendix-A/main/ddp_torchrun.py    # 2 个进程；有 2 块显卡就一人一块，没有就都在 CPU 上
    python appendix-A/main/ddp_torchrun.py                         # 1 个进程，代码一字不改
    找不到 torchrun 时，用 python -m torch.distributed.run 代替，后面相同
    1 个进程约 4 秒，0.3 GB；2 个进程约 7 秒，每个 0.3 GB（2 核 CPU）

形状记号：b 批大小（每个进程的）　w 进程数　p 参数个数
"""

import copy
import os
import platform
import time

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

# 改这里
NUM_EPOCHS = 3  # 训练几轮


# region 沿用 appendix-A/main/example_03_multilayer_network.py: NeuralNetwork
class NeuralNetwork(nn.Module):
    """两个隐藏层的全连接网络：num_inputs → 30 → 20 → num_outputs，中间用 ReLU。（详解见 appendix-A/main/example_03_multilayer_network.py）"""

    def __init__(self, num_inputs, num_outputs):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(num_inputs, 30),
            nn.ReLU(),
            nn.Linear(30, 20),
            nn.ReLU(),
            nn.Linear(20, num_outputs),
        )

    def forward(self, x):
        logits = self.layers(x)  # (b, num_outputs)
        return logits


# endregion


# region 沿用 appendix-A/main/example_04_data_and_training.py: ToyDataset
class ToyDataset(Dataset):
    """把特征和标签配成对的数据集。（详解见 appendix-A/main/example_04_data_and_training.py）"""

    def __init__(self, X, y):
        self.features = X
        self.labels = y

    def __getitem__(self, index):
        one_x = self.features[index]
        one_y = self.labels[index]
        return one_x, one_y

    def __len__(self):
        return self.labels.shape[0]


# endregion


# region 改写 appendix-A/main/example_04_data_and_training.py: compute_accuracy
def compute_accuracy(model, dataloader, device):  # 改：多一个 device，每个进程用自己的那一块
    """算准确率：猜对的比例，可以在任何设备上。（原版详解见 appendix-A/main/example_04_data_and_training.py）"""
    model = model.eval()
    correct = 0.0
    total_examples = 0
    for features, labels in dataloader:
        features, labels = features.to(device), labels.to(device)  # 改：每一批都要搬
        with torch.no_grad():
            logits = model(features)  # (b, c)
        predictions = torch.argmax(logits, dim=1)  # (b,)
        correct += torch.sum(labels == predictions)
        total_examples += len(labels)
    return (correct / total_examples).item()


# endregion


def ddp_setup(rank, world_size, device):
    """加入进程组（process group）：大家互相找到、连上之后，才能交换梯度。

    参数:
        rank (int): 自己的编号，0 到 world_size - 1
        world_size (int): 一共几个进程
        device (torch.device): 自己的设备，决定用哪种通信

    出处: 原书 A.9.3 节
    """
    # 各进程都去 0 号进程的地址和端口报到，到齐了才往下走。torchrun 会设好这两个变量；
    # 直接用 python 运行时只有自己，端口 0 表示随便挑一个空的。
    os.environ.setdefault("MASTER_ADDR", "localhost")
    os.environ.setdefault("MASTER_PORT", "0")
    if platform.system() == "Windows":
        os.environ["USE_LIBUV"] = "0"  # Windows 版 PyTorch 编译时没有带 libuv，不关掉就报错
    # nccl：显卡之间直接传，快，只有 Linux 上有；gloo：走网络，CPU 上也能用。
    backend = "nccl" if device.type == "cuda" and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=world_size)
    if device.type == "cuda":
        torch.cuda.set_device(device)


def prepare_dataset():
    """准备数据：训练数据每个进程拿到不同的一份，测试数据每个进程都有全部。

    返回:
        tuple[DataLoader, DataLoader]: 训练和测试的数据加载器

    出处: 原书 A.9.3 节
    """
    X_train = torch.tensor([[-1.2, 3.1], [-0.9, 2.9], [-0.5, 2.6], [2.3, -1.1], [2.7, -1.5]])
    y_train = torch.tensor([0, 0, 0, 1, 1])
    X_test = torch.tensor([[-0.8, 2.8], [2.6, -1.6]])
    y_test = torch.tensor([0, 1])
    factor = dist.get_world_size()
    if factor > 2:
        # 5 个样本分给 8 个进程，每个连一批都凑不满，准确率就要除以 0。照书上的办法扩充：复制几份，加一点噪声。
        # 各进程的种子相同，造出来的数据才一样，才谈得上"分"。
        X_train = torch.cat([X_train + torch.randn_like(X_train) * 0.1 for _ in range(factor)])  # (5w, 2)
        y_train = y_train.repeat(factor)

    train_ds = ToyDataset(X_train, y_train)
    train_loader = DataLoader(
        dataset=train_ds,
        batch_size=2,  # 每个进程的；合起来的一批 = 2 × 进程数
        shuffle=False,  # 打乱交给 sampler，两个都开会报错
        pin_memory=torch.cuda.is_available(),  # 锁页内存：往显卡搬得更快；没有显卡时没用
        drop_last=True,  # 每个进程的批一样大，梯度的平均才等于全局的平均
        # 先打乱，再像发牌一样轮流分。不能整除时拿开头的几个再补一遍，让各进程的步数相同：
        # 谁少走一步，别人就一直等它的梯度，整个程序卡住。
        sampler=DistributedSampler(train_ds),
    )
    test_loader = DataLoader(dataset=ToyDataset(X_test, y_test), batch_size=2, shuffle=False)
    return train_loader, test_loader


def train_alone(model, train_ds, world_size, num_epochs):
    """对照：一个进程，不用 DDP，每一步把各进程的批接成一个大批。

    各份一样大时，平均的平均就是总平均，所以它应当与 DDP 得到同样的参数，只因加法次序不同而差在末位。

    参数:
        model (nn.Module): 与 DDP 起点相同的模型，会被训练
        train_ds (Dataset): 训练数据
        world_size (int): 把几个进程的批接起来
        num_epochs (int): 训练几轮

    返回:
        Tensor: 训练后的全部参数排成一行，(p,)
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    samplers = [DistributedSampler(train_ds, num_replicas=world_size, rank=rank) for rank in range(world_size)]
    loaders = [DataLoader(train_ds, batch_size=2, drop_last=True, sampler=sampler) for sampler in samplers]
    for epoch in range(num_epochs):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        for batches in zip(*loaders):
            features = torch.cat([features for features, _ in batches])  # (w·b, 2)
            labels = torch.cat([labels for _, labels in batches])  # (w·b,)
            optimizer.zero_grad()
            F.cross_entropy(model(features), labels).backward()
            optimizer.step()
    return nn.utils.parameters_to_vector(model.parameters()).detach()


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def say(rank, text):
    """打印一行，注明是哪个进程；连换行一次写完，几个进程的话才不会挤进一行。"""
    print(f"[进程 {rank}] {text}\n", end="", flush=True)


def main(rank, world_size, num_epochs, device):
    """每个进程都运行一遍这个函数，代码完全相同，只有 rank 和 device 不同。

    参数:
        rank (int): 自己的编号
        world_size (int): 一共几个进程
        num_epochs (int): 训练几轮
        device (torch.device): 自己的设备

    返回:
        nn.Module: 训练好的模型，已从 DDP 里取出

    出处: 原书 A.9.3 节
    """
    ddp_setup(rank, world_size, device)  # 新 ①　加入进程组
    train_loader, test_loader = prepare_dataset()  # 新 ②　用 DistributedSampler 分数据
    model = NeuralNetwork(num_inputs=2, num_outputs=2)
    alone = copy.deepcopy(model)  # 留一份起点，自查时用来对照
    model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    # 新 ③　包一层。包的时候 0 号进程把自己的参数广播给大家，起点就相同；之后它在 backward() 里平均梯度，步子也相同。
    # 原来的模型在 model.module 里，存盘要存它：包了 DDP 的状态字典，名字前面会多一个 module.，别处读不回来。
    model = DDP(model, device_ids=[device] if device.type == "cuda" else None)

    for epoch in range(num_epochs):
        # 新 ④　不写这一句，每一轮的次序都相同：sampler 只看自己的种子加轮数，不理 torch.manual_seed。
        train_loader.sampler.set_epoch(epoch)
        say(rank, f"第 {epoch + 1} 轮分到的样本 {list(train_loader.sampler)}")
        model.train()
        for features, labels in train_loader:
            features, labels = features.to(device), labels.to(device)
            logits = model(features)  # (b, 2)
            loss = F.cross_entropy(logits, labels)  # 只是自己这一批的，各进程不同；相同的是平均过的梯度
            optimizer.zero_grad()
            loss.backward()  # 通信就藏在这一行：哪个参数的梯度一算好，就与别的进程求平均
            optimizer.step()
            say(rank, f"第 {epoch + 1}/{num_epochs} 轮　一批 {len(labels)} 个　训练损失 {loss:.2f}")

    train_acc = compute_accuracy(model, train_loader, device=device)  # 只数自己分到的那份
    test_acc = compute_accuracy(model, test_loader, device=device)
    say(rank, f"准确率　训练 {train_acc}　测试 {test_acc}")

    # 0 号把自己的参数发给大家，各自算与它差多少，再取所有进程里最大的。这两次通信人人都要参加，少一个就永远等下去。
    mine = nn.utils.parameters_to_vector(model.module.parameters()).detach()  # (p,)
    zeros = mine.clone()
    dist.broadcast(zeros, src=0)
    spread = (mine - zeros).abs().max()
    dist.all_reduce(spread, op=dist.ReduceOp.MAX)
    if rank == 0:  # 自查只要一份；存模型也一样，几个进程写同一个文件会互相覆盖
        print("\n这个数字对吗？")
        if world_size > 1:
            claim = f"{world_size} 个进程的参数逐位相同（最多相差 {spread.item():.1e}）"
            confirm(claim, spread == 0, "前向用的是 model.module，绕过了 DDP，梯度没有平均")
        gap = (mine.cpu() - train_alone(alone, train_loader.dataset, world_size, num_epochs)).abs().max().item()
        claim = f"与 1 个进程、一批 {2 * world_size} 个、不用 DDP 训练的参数相同（最多相差 {gap:.1e}）"
        confirm(claim, gap < (1e-5 if device.type == "cpu" else 1e-2), "梯度没有平均，或各进程的批不一样大")
        if num_epochs >= 3:
            confirm(f"测试集全对（准确率 {test_acc}）", test_acc == 1.0, "学习率不是 0.5，还没学会")
    # 停半秒再走：gloo 的后台线程做完通信，还要放下手里的张量，放下时要用到 Python 解释器；
    # 解释器若已在退出，进程就会崩溃。
    time.sleep(0.5)
    dist.destroy_process_group()  # 不写这一句，退出时会有警告
    return model.module


def from_torchrun():
    """从 torchrun 设好的环境变量得知自己是谁；不是 torchrun 启动的，就只有自己。

    返回:
        tuple[int, int, torch.device]: 自己的编号、一共几个进程、用哪个设备
    """
    rank, world_size, local_rank, local_size = 0, 1, 0, 1
    if "LOCAL_RANK" in os.environ:  # 只看 WORLD_SIZE 会误会：集群的作业系统也爱设它
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        rank, world_size, local_rank, local_size = (int(os.environ[name]) for name in names)
    # RANK 是全局的编号，LOCAL_RANK 是在这台机器上的编号，也就是用第几块显卡；只有一台机器时两者相同（书上就只用一个）。
    # 显卡够一人一块才用；不够就都在 CPU 上。MPS 不行，进程之间的通信不支持它。
    enough = torch.cuda.device_count() >= local_size
    return rank, world_size, torch.device("cuda", local_rank) if enough else torch.device("cpu")


if __name__ == "__main__":
    rank, world_size, device = from_torchrun()
    if rank == 0:
        print(f"PyTorch {torch.__version__}　{world_size} 个进程，在 {device.type} 上", flush=True)
    torch.manual_seed(123)  # 各进程的种子相同
    main(rank, world_size, NUM_EPOCHS, device)
