"""附录 A · A.6–A.8 节　数据加载器、训练循环、存取模型

读完你应该能回答：
    1. 自己的 Dataset 要写哪三个方法？DataLoader 在它上面又加了什么？
    2. 一个训练步的四件事，哪一件可以换个位置？train() 和 eval() 改变了什么？
    3. 存模型存的是什么？加载时为什么要先建一个一模一样的模型？

运行：
    python appendix-A/main/example_04_data_and_training.py
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 3 秒，0.3 GB（2 核 CPU）；模型存在临时文件夹里，结束时删掉

形状记号：b 批大小　n 样本数　f 特征数　c 类别数（这里 f = c = 2）
"""

import tempfile
from pathlib import Path

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


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion

# %% A.6　玩具数据：5 个训练样本，2 个测试样本
# 第 0 类在左上方，第 1 类在右下方，画一条直线就能分开：数据越简单，越能看清训练循环本身。
X_train = torch.tensor([[-1.2, 3.1], [-0.9, 2.9], [-0.5, 2.6], [2.3, -1.1], [2.7, -1.5]])  # (n, 2) = (5, 2)
# 标签是类别的编号，从 0 数起、中间不空号，类型是 int64：F.cross_entropy 拿它当下标用，写成小数会报错。
y_train = torch.tensor([0, 0, 0, 1, 1])  # (n,)
X_test = torch.tensor([[-0.8, 2.8], [2.6, -1.6]])  # (2, 2)
y_test = torch.tensor([0, 1])


# %% A.6　Dataset：告诉 PyTorch 有几个样本、第 i 个是什么
class ToyDataset(Dataset):
    """把特征和标签配成对的数据集。

    自己的 Dataset 只要三个方法：__init__ 记住数据在哪里（大数据只记文件名），__getitem__ 取一个样本，__len__ 报总数。
    凑批、打乱、多进程读取都是 DataLoader 的事，所以换数据只换 Dataset，训练代码一个字不用改。

    参数:
        X (Tensor): 特征，(n, f)
        y (Tensor): 类别编号，(n,)

    出处: 原书 A.6 节
    """

    def __init__(self, X, y):
        self.features = X
        self.labels = y

    def __getitem__(self, index):
        """取一个样本；都没有批的那一维，DataLoader 会把几个叠成一批。

        参数:
            index (int): 第几个，从 0 数起

        返回:
            tuple[Tensor, Tensor]: 特征 (f,) 和标签 ()
        """
        one_x = self.features[index]
        one_y = self.labels[index]
        return one_x, one_y

    def __len__(self):
        """样本数 n；DataLoader 靠它知道一轮有几批。"""
        return self.labels.shape[0]


train_ds = ToyDataset(X_train, y_train)
test_ds = ToyDataset(X_test, y_test)
print(f"【A.6】训练样本 {len(train_ds)} 个，测试样本 {len(test_ds)} 个；第 0 个样本：{train_ds[0]}")

# %% A.6　DataLoader：打乱、凑批
# shuffle=True：每一轮（epoch）重新打乱，免得模型记住次序、在同样的几批之间来回摆。测试集不打乱，结果才好对照。
# num_workers=0：在主进程里读。数据在硬盘上、读得慢时，开几个子进程提前读好，GPU 就不用等；
# 但启动子进程、传数据都要时间，小数据反而更慢；macOS 和 Windows 上它们还会把脚本从头再跑一遍，顶层代码会出错。
torch.manual_seed(123)
train_loader = DataLoader(dataset=train_ds, batch_size=2, shuffle=True, num_workers=0)
test_loader = DataLoader(dataset=test_ds, batch_size=2, shuffle=False, num_workers=0)
print(f"\n每批 2 个，{len(train_ds)} 个样本分成 {len(train_loader)} 批")
for idx, (x, y) in enumerate(train_loader):
    print(f"第 {idx + 1} 批：", x, y)

# %% A.6　drop_last：丢掉最后不满的一批
# 一轮里突然来一批特别小的，它的梯度噪声大，却和别的批走一样大的一步，会干扰收敛。
# 丢掉的不会总是同一个样本：下一轮重新打乱，轮到别人。测试时不能丢，少一个样本，准确率就不对了。
train_loader = DataLoader(dataset=train_ds, batch_size=2, shuffle=True, num_workers=0, drop_last=True)
print(f"\ndrop_last=True，只剩 {len(train_loader)} 批")
for idx, (x, y) in enumerate(train_loader):
    print(f"第 {idx + 1} 批：", x, y)

# %% A.7　训练循环：本书从头到尾都是这个样子
torch.manual_seed(123)  # 初始权重和每一轮的次序都从这里取随机数；中间多迭代一次 DataLoader，后面的损失就全变了
model = NeuralNetwork(num_inputs=2, num_outputs=2)
# 学习率（learning rate）0.5：每一步往梯度的反方向走多远。太大会来回跳甚至发散，太小要走很久；它是最值得先调的超参数。
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

# 一个训练步有四件事。前向 → 反向 → 更新的次序不能动：后一件要用前一件的结果；清零（zero_grad）只要在反向之前就行。
# 这里照原书写在前向之后，第 5 章起写在前向之前，结果相同。
num_epochs = 3
losses = []
print(f"\n【A.7】训练 {num_epochs} 轮，每轮 {len(train_loader)} 步")
for epoch in range(num_epochs):
    model.train()  # 训练模式。这个模型没有 dropout，写不写结果一样；养成习惯，第 4 章起就不一样了
    for batch_idx, (features, labels) in enumerate(train_loader):
        logits = model(features)  # (b, 2)　① 前向
        loss = F.cross_entropy(logits, labels)  # 直接给 logits：它自己会做 softmax
        optimizer.zero_grad()  # ② 清零：PyTorch 的梯度是累加的
        loss.backward()  # ③ 反向：每个参数的 grad 里放好新梯度
        optimizer.step()  # ④ 更新：w ← w - lr · grad
        losses.append(loss.item())  # item() 取出 Python 的数；直接存 loss，会把整张计算图一直留在内存里
        print(f"第 {epoch + 1}/{num_epochs} 轮　第 {batch_idx + 1}/{len(train_loader)} 批　训练损失 {loss:.2f}")
    model.eval()  # 评估模式：每一轮之后可以在这里看看验证集

# %% A.7　用训练好的模型预测
model.eval()
with torch.no_grad():
    outputs = model(X_train)  # (n, 2)
print("\n5 个训练样本的 logits")
print(outputs)

torch.set_printoptions(sci_mode=False)  # 不用科学记数法，0.0009 好读过 9.1e-04
probas = torch.softmax(outputs, dim=1)  # (n, 2)
print("概率")
print(probas)
predictions = torch.argmax(probas, dim=1)  # (n,)
print("预测的类别", predictions)
# softmax 只改大小、不改次序，所以跳过它，直接对 logits 取 argmax，结果相同。
predictions = torch.argmax(outputs, dim=1)  # (n,)
print("不做 softmax，直接 argmax", predictions)
print("猜对了吗？", predictions == y_train)
print("猜对几个：", torch.sum(predictions == y_train).item())


# %% A.7　准确率：数据再多也不怕
# 上面把全部样本一次送进去；数据多了内存装不下，所以一批一批地数。
def compute_accuracy(model, dataloader):
    """算准确率：猜对的比例。

    参数:
        model (nn.Module): 分类模型，(b, f) → (b, c)
        dataloader (DataLoader): 每批给出 (features, labels)

    返回:
        float: 0 到 1 之间

    出处: 原书 A.7 节
    """
    model = model.eval()
    correct = 0.0
    total_examples = 0
    for features, labels in dataloader:
        with torch.no_grad():
            logits = model(features)  # (b, c)
        predictions = torch.argmax(logits, dim=1)  # (b,)
        correct += torch.sum(labels == predictions)
        total_examples += len(labels)  # 每批的大小可能不同，所以数样本，不要对各批的准确率取平均
    return (correct / total_examples).item()


train_accuracy = compute_accuracy(model, train_loader)
test_accuracy = compute_accuracy(model, test_loader)
print(f"\n准确率　训练集 {train_accuracy}　测试集 {test_accuracy}")
# 训练集那个数只看了 4 个样本：train_loader 丢掉了最后不满的一批。测试集那个数才作数。

# %% A.8　存盘：存的是状态字典（state dict），名字到张量
# 不存整个模型对象：那样会把类所在的文件、路径一起存进去，代码一挪动就读不回来。
print("\n【A.8】状态字典里有：")
for name, tensor in model.state_dict().items():
    print(f"  {name:<15} {tuple(tensor.shape)}")
folder = tempfile.TemporaryDirectory()  # 书上存在当前文件夹；这里用临时文件夹，不留垃圾
path = Path(folder.name) / "model.pth"
torch.save(model.state_dict(), path)
print(f"文件 {path.stat().st_size} 字节")

# %% 读回来：先建一个一模一样的模型，再把数填进去
# weights_only=True：只读张量，不执行文件里夹带的代码（pickle 文件可以藏代码，网上下载的尤其要防）。
state = torch.load(path, map_location="cpu", weights_only=True)
loaded = NeuralNetwork(2, 2)
loaded.eval()
with torch.no_grad():
    untrained = loaded(X_train)  # (n, 2)　还没填：随机的权重
    print("load_state_dict：", loaded.load_state_dict(state))
    restored = loaded(X_train)  # (n, 2)
gaps = [(each - outputs).abs().max().item() for each in (untrained, restored)]
print(f"与原来的输出最多相差：填之前 {gaps[0]:.1f}，填之后 {gaps[1]:.1f}")
try:
    NeuralNetwork(2, 3).load_state_dict(state)  # 名字或形状对不上，就报错
except RuntimeError as error:
    print(f"换成 3 类的模型来读：RuntimeError: {str(error).splitlines()[1].strip().split(':')[0]}…")
folder.cleanup()

# %% 这个数字对吗？
print("\n这个数字对吗？")
book = "0.75 0.65 0.44 0.13 0.03 0.00"
shown = " ".join(f"{each:.2f}" for each in losses)
confirm(f"六步的损失与原书一致：{book}（得到 {shown}）", shown == book, "设种子之后多取过随机数，如多迭代了一遍数据")
book = [[2.8569, -4.1618], [2.5382, -3.7548], [2.0944, -3.1820], [-1.4814, 1.4816], [-1.7176, 1.7342]]
close = torch.allclose(outputs, torch.tensor(book), atol=1e-4)
confirm("训练后的 logits 与原书一致", close, "学习率不是 0.5，或漏了 zero_grad")
confirm("准确率：训练集、测试集都是 1.0", train_accuracy == test_accuracy == 1.0, "标签和特征没有对齐")
confirm("读回来的模型，输出与原来逐位相同", torch.equal(restored, outputs), "忘了 load_state_dict")
confirm("load_state_dict 之前不同", not torch.equal(untrained, outputs), "两个变量其实是同一个模型")

# %% 动手改
# 1. 把 optimizer.zero_grad() 那一行注释掉：第 2 步的损失还相同（为什么？），第 3 步从 0.44 变成 0.74。
#    这里最后也学会了：旧梯度像惯性，数据又太简单。大一些的模型就没这么走运，见第 5 章的 example_02_training_loop.py。
# 2. 把 zero_grad 挪到前向之前：六个损失一个不变；再挪到 backward 与 step 之间：什么也没学到，最后一步还是 0.75。
# 3. 把学习率 0.5 改成 50：损失冲到几亿，最后 5 个样本全猜成同一类；改成 0.005：走了 6 步，还有 0.70。
# 4. 把 y_train 改成 torch.tensor([0.0, 0, 0, 1, 1])，读懂 F.cross_entropy 的报错。
