"""附录 A · A.9.1–A.9.2 节　搬到 GPU 上：张量、模型，和只改三行的训练循环

读完你应该能回答：
    1. 把 A.7 节的训练循环搬到 GPU 上，要改哪三行？
    2. model.to(device) 与 tensor.to(device) 有什么不同？哪一个忘了接住结果就白搬了？
    3. "两个张量不在同一个设备上"的报错怎样查？

运行：
    python appendix-A/main/example_05_devices.py
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 3 秒，0.3 GB（2 核 CPU）；没有 GPU 也能跑，混用设备的报错用 meta 假设备演示

形状记号：b 批大小　n 样本数　c 类别数
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset


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
def compute_accuracy(model, dataloader, device):  # 改：多一个 device，要与模型所在的设备相同
    """算准确率：猜对的比例，可以在任何设备上。（原版详解见 appendix-A/main/example_04_data_and_training.py）"""
    model = model.eval()
    correct = 0.0
    total_examples = 0
    for features, labels in dataloader:
        features, labels = features.to(device), labels.to(device)  # 改：DataLoader 给出的总是在 CPU 上，每一批都要搬
        with torch.no_grad():
            logits = model(features)  # (b, c)
        predictions = torch.argmax(logits, dim=1)  # (b,)
        correct += torch.sum(labels == predictions)
        total_examples += len(labels)
    return (correct / total_examples).item()


# endregion


# region 沿用 setup/device_check.py: pick_device
def pick_device(name="auto"):
    """选择计算设备；点名要的设备不存在就报错，绝不悄悄换成 CPU。（详解见 setup/device_check.py）"""
    available = {"mps": torch.backends.mps.is_available(), "cuda": torch.cuda.is_available(), "cpu": True}
    name = next(device for device, found in available.items() if found) if name == "auto" else name
    if not available.get(name):
        raise ValueError(f"这台机器上没有设备 {name}；运行 python setup/device_check.py 看有哪些、为什么")
    return torch.device(name)


# endregion


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion

# %% A.9.1　有哪些设备
# cuda 是英伟达显卡（有几块就有 cuda:0、cuda:1……），mps 是苹果芯片的 GPU，cpu 人人都有。
# MPS 与 CPU 共用内存，但在 PyTorch 里仍是两个设备，照样要搬。
device = pick_device()
print(f"【A.9.1】CUDA {torch.cuda.is_available()}　MPS {torch.backends.mps.is_available()}　选用 {device}")

# %% 张量在哪里，就在哪里算
tensor_1 = torch.tensor([1.0, 2.0, 3.0])
tensor_2 = torch.tensor([4.0, 5.0, 6.0])
print("\n在 cpu 上相加", tensor_1 + tensor_2)
# tensor.to() 不改自己，返回搬过去的那一份：不接住（只写 tensor_1.to(device)）就等于没搬。
# 本来就在那里的，返回的就是它自己。
on_device_1, on_device_2 = tensor_1.to(device), tensor_2.to(device)
if on_device_1 is tensor_1:
    print("没有 GPU，to(device) 返回的就是原来的张量")
else:
    print(f"在 {device} 上相加", on_device_1 + on_device_2)

# %% 混用设备：报错
# 两块内存互相看不见，PyTorch 也不会替你搬：搬一次比算一次慢得多，悄悄搬会让人找不到慢在哪里。
# 没有 GPU 时用 meta：一个只记形状、不存数据的假设备，每台电脑都有，报的是同样的错。
other = device if device.type != "cpu" else torch.device("meta")
mixed_error = ""
try:
    tensor_1 + tensor_2.to(other)
except RuntimeError as error:
    mixed_error = str(error).splitlines()[0]
print(f"\ncpu 的张量加 {other} 的张量：RuntimeError: {mixed_error}")
# 查法：报错的那一行里，逐个打印 .device；最常漏的是新建的张量（忘了 device=…）和没有登记成 buffer 的掩码（第 3 章）。
# 例外：CPU 上的 0 维张量（一个数）可以与任何设备的张量一起算，它被当成普通的数。
print("CPU 上的一个数可以混用：", (torch.tensor(2.0) * tensor_2.to(other)).device)

# %% A.9.2　数据与 A.6 节相同
X_train = torch.tensor([[-1.2, 3.1], [-0.9, 2.9], [-0.5, 2.6], [2.3, -1.1], [2.7, -1.5]])  # (n, 2) = (5, 2)
y_train = torch.tensor([0, 0, 0, 1, 1])  # (n,)
X_test = torch.tensor([[-0.8, 2.8], [2.6, -1.6]])
y_test = torch.tensor([0, 1])
# 书上这里用 num_workers=1。macOS 和 Windows 上子进程会把脚本从头再跑一遍，顶层代码会出错，所以仍用 0，损失不受影响。
train_loader = DataLoader(ToyDataset(X_train, y_train), batch_size=2, shuffle=True, num_workers=0, drop_last=True)
test_loader = DataLoader(ToyDataset(X_test, y_test), batch_size=2, shuffle=False, num_workers=0)


# %% A.9.2　在一块 GPU 上训练：与 A.7 节相比只多三处，标着"新"
def train(device):
    """在指定的设备上，把 A.7 节的训练原样做一遍。

    参数:
        device (torch.device): 在哪里算

    返回:
        tuple[nn.Module, list[float]]: 训练好的模型（在 device 上），和每一步的损失
    """
    torch.manual_seed(123)
    # 先在 CPU 上建好再搬：初始权重来自 CPU 的随机数，换什么设备都相同。
    # 直接在 GPU 上建，用的是 GPU 自己的随机数，数字就全变了。
    model = NeuralNetwork(num_inputs=2, num_outputs=2)
    model = model.to(device)  # 新 ①　模块的 to() 就地搬走所有参数和 buffer；不写"model ="也行，写上与张量一致
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)  # 搬完再建优化器，它拿到的一定是搬好的参数

    losses = []
    for _ in range(3):
        model.train()
        for features, labels in train_loader:
            features, labels = features.to(device), labels.to(device)  # 新 ②③　特征和标签，每一批都要搬
            logits = model(features)  # (b, 2)
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())  # item() 要等 GPU 算完、把数搬回 CPU；真正训练时不要每步都取
    return model, losses


model, losses = train(device)
print(f"\n【A.9.2】在 {device} 上训练")
for step, loss in enumerate(losses):
    print(f"第 {step // 2 + 1}/3 轮　第 {step % 2 + 1}/2 批　训练损失 {loss:.2f}")

# %% 准确率：也要告诉它设备
train_accuracy = compute_accuracy(model, train_loader, device=device)
test_accuracy = compute_accuracy(model, test_loader, device=device)
print(f"\n准确率　训练集 {train_accuracy}　测试集 {test_accuracy}")

# %% 与 CPU 逐步比较
# 同样的初始权重、同样的批，只差在加法的先后次序：浮点数加法不满足结合律，末几位会不同，训练得越久差得越多。
_, cpu_losses = train(torch.device("cpu"))
gap = max(abs(ours - cpu) for ours, cpu in zip(losses, cpu_losses))
print(f"\n在 CPU 上再训练一遍，损失最多相差 {gap:.1e}")

# %% 搬回来：NumPy 和 matplotlib 只认 CPU 上的张量
# 要求梯度的先 detach()，在 GPU 上的再 cpu()，最后才能 numpy()。
weight = model.layers[0].weight
print("第一层权重搬回 NumPy：", weight.detach().cpu().numpy().shape)

# %% 玩具数据用 GPU 反而慢
# 每一步只有几千次乘法，GPU 花在"接单"上的时间比算的多。什么时候才划算，见 experiments/exercise_A_4_matmul_timing.py。
# 几块 GPU 一起训练（A.9.3），见 ddp_torchrun.py。

# %% 这个数字对吗？
print("\n这个数字对吗？")
added = (on_device_1 + on_device_2).cpu()
confirm(f"在 {device} 上相加得 [5, 7, 9]", added.tolist() == [5, 7, 9], "两个张量的数字抄错了")
confirm("混用设备报 RuntimeError", mixed_error != "", "其中一个是 0 维张量，它可以混用")
book = "0.75 0.65 0.44 0.13 0.03 0.00"
shown = " ".join(f"{each:.2f}" for each in cpu_losses)
confirm(f"CPU 上的损失与原书一致：{book}（得到 {shown}）", shown == book, "设种子之后多取过随机数")
# 书上在英伟达显卡上得到的也是这六个数；MPS 和 CUDA 允许差 0.01，同一个设备做两遍必须逐位相同。
if device.type == "cpu":
    confirm("同样的种子，两遍的损失逐位相同", gap == 0, "train 里没有设种子")
else:
    confirm(f"{device} 与 CPU 的损失最多相差 {gap:.1e}，小于 0.01", gap < 0.01, "模型是直接在 GPU 上建的，起点就不同")
confirm("准确率：训练集、测试集都是 1.0", train_accuracy == test_accuracy == 1.0, "特征搬了，标签没有搬")

# %% 动手改
# 1. 把 device = pick_device() 改成 torch.device("meta")：前向、反向都能走，到 loss.item() 才报错：meta 没有真的数据。
# 2. 有 GPU 的话：去掉「新 ②③」那一行，看报错里是哪两个设备；没有的话，在它后面加一句 features = features.to("meta")。
# 3. 把 train 里的 torch.manual_seed(123) 去掉：两次训练不再相同，有两条自查会变成 ✗。
