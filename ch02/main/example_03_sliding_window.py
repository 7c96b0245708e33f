"""第 2 章 · 2.6 节　滑动窗口（sliding window）：从一段文本里切出"输入—目标"样本

读完你应该能回答：
    1. 一个长 4 的样本里，其实藏着几道"预测下一个词元"的题？
    2. 目标（target）为什么就是输入右移一位？谁来标注？
    3. stride 取 1、取 max_length、取更大，各会怎样？

运行：
    python ch02/main/example_03_sliding_window.py
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 2 秒，0.3 GB（2 核 CPU）

形状记号（全书统一）：b 批大小　t 序列长度（词元数）　n 样本数
"""

import os
import sys
from pathlib import Path

import tiktoken
import torch
from torch.utils.data import DataLoader, Dataset


# region 沿用 setup/find_data.py: find_data
def find_data(*names):
    """到几个数据文件夹里依次找，返回找到的第一个；都没有，就说先运行哪条命令，退出码 2。（详解见 setup/find_data.py）"""
    here = Path(__file__ if "__file__" in globals() else "x").resolve()
    root = next((folder for folder in here.parents if (folder / "setup" / "data").is_dir()), Path())
    for folder in [os.environ.get("LLM_DATA_DIR"), root / "setup" / "downloads", root / "setup" / "data", root / "ch05" / "outputs"]:
        for name in names:
            path = Path(folder or "") / name
            if folder and (path.is_file() or any(path.glob("*"))):
                return path
    commands = {"tiktoken": "setup/prepare.py", "gpt_mini.pth": "ch05/main/gpt_train.py（约 90 秒）"}
    commands |= {f"gpt2-{size}.pth": f"ch05/main/gpt_download.py --size {size}" for size in ("124M", "355M", "774M", "1558M")}
    print(f"找不到 {names[0]}，请先运行 python {commands.get(names[0], 'setup/download.py')}", file=sys.stderr)
    sys.exit(2)


# endregion

os.environ["TIKTOKEN_CACHE_DIR"] = str(find_data("tiktoken"))  # GPT-2 的词表由 setup/run.sh 放好，不联网


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion

# %% 2.6　整篇文本 → 一长串编号
path = find_data("the-verdict.txt", "story-en.txt")
raw_text = path.read_text(encoding="utf-8")
is_book = path.name == "the-verdict.txt"
tokenizer = tiktoken.get_encoding("gpt2")
enc_text = tokenizer.encode(raw_text)
print(f"【2.6】文本 {path}")
print(f"{len(raw_text)} 个字符 → {len(enc_text)} 个词元，平均 {len(raw_text) / len(enc_text):.1f} 个字符一个词元")

# %% 输入 x 与目标 y：y 就是 x 右移一位
# 去掉开头 50 个词元，只是因为后面这一段作例子更有意思。
enc_sample = enc_text[50:]
context_size = 4  # 上下文长度（context length）：最多看几个词元来猜下一个
x = enc_sample[:context_size]
y = enc_sample[1 : context_size + 1]
print("\nx:", x)
print("y:     ", y)  # 缩进正好让相同的编号上下大致对齐

# %% 一个样本里藏着 4 道题
# 看到第 1 个词元，猜第 2 个；看到前 2 个，猜第 3 个……模型一次前向就全做了（怎样不偷看答案，是第 3 章因果掩码的事）。
print()
for i in range(1, context_size + 1):
    context, desired = enc_sample[:i], enc_sample[i]
    print(context, "---->", desired)
print()
for i in range(1, context_size + 1):
    context, desired = enc_sample[:i], enc_sample[i]
    print(tokenizer.decode(context), "---->", tokenizer.decode([desired]))

# %% 把窗口一路滑下去：原书的循环，和 unfold
# 先在 0–9 上看清楚。最后一个窗口是 4–7 而不是 6–9：目标还要再往后一个，10 已经没有了。
numbers = torch.arange(10)
by_loop = torch.stack([numbers[i : i + 4] for i in range(0, len(numbers) - 4, 2)])  # (n, t)
by_unfold = numbers[:-1].unfold(0, 4, 2)  # (n, t)　沿第 0 维，每隔 2 个取一段长 4 的；先去掉最后一个，它只能当目标
print("\n0–9，t = 4，stride = 2")
print("循环　：", by_loop.tolist())
print("unfold：", by_unfold.tolist())


# %% 数据集：一段文本 → n 个样本
class GPTDatasetV1(Dataset):
    """把一段长文本切成许多等长的"输入—目标"样本。

    目标就是输入整体右移一个词元：每个位置的正确答案，是文本里紧跟着的那个词元。
    文本自己就是标注，所以预训练不需要人工标注（自监督，self-supervised）。

    参数:
        txt (str): 原始文本
        tokenizer: 有 encode 方法的分词器
        max_length (int): 每个样本的词元数 t，不能超过模型的上下文长度
        stride (int): 步幅，相邻两个样本的起点隔多少个词元。等于 max_length 时首尾相接、互不重叠；
            更小时样本更多，但同一个词元会反复出现，更容易过拟合

    形状:
        input_ids、target_ids 都是 (n, t)

    异常:
        ValueError: 文本太短，凑不出一个样本

    出处: 原书 2.6 节
    """

    def __init__(self, txt, tokenizer, max_length, stride):
        token_ids = tokenizer.encode(txt, allowed_special={"<|endoftext|>"})
        if len(token_ids) <= max_length:
            raise ValueError(f"文本只有 {len(token_ids)} 个词元，凑不出一个长 {max_length} 的样本（目标还要多 1 个），请换长一点的文本或改小 max_length")
        # 原书用循环，给每个窗口各造一个张量，存进列表。unfold 切出的样本逐个相同，但只记每个窗口的起点，不复制数据。
        # 一千万个词元、t = 256、stride = 128：循环要 9 秒、多占 400 MB；这里 2 秒、80 MB，全花在 torch.tensor 上。
        ids = torch.tensor(token_ids)
        self.input_ids = ids[:-1].unfold(0, max_length, stride)  # (n, t)　最后一个词元只能当目标
        self.target_ids = ids[1:].unfold(0, max_length, stride)  # (n, t)　整体右移一位

    def __len__(self):
        """样本数 n。"""
        return len(self.input_ids)

    def __getitem__(self, idx):
        """第 idx 个样本：输入和目标，各 (t,)。"""
        return self.input_ids[idx], self.target_ids[idx]


# %% 数据加载器（DataLoader）：一批一批地给出样本
# Dataset 只会两件事：有几个样本（__len__）、取第几个样本（__getitem__）；凑批、打乱、丢尾巴都由 DataLoader 做。
def create_dataloader_v1(txt, batch_size=4, max_length=256, stride=128, shuffle=True, drop_last=True, num_workers=0):
    """文本 → 一批一批的（输入，目标）。

    参数:
        txt (str): 原始文本
        batch_size (int): 每批几个样本。大：梯度稳、省时间，但占内存；小：省内存，但梯度噪声大
        max_length (int): 每个样本的词元数 t
        stride (int): 相邻样本的起点隔多少个词元
        shuffle (bool): 每轮是否打乱样本次序；训练时打乱，核对数字时不打乱
        drop_last (bool): 最后一批凑不满时是否丢掉。训练时丢掉：不满的一批样本少，梯度噪声大，损失会突然跳一下
        num_workers (int): 用几个子进程读数据。数据已在内存里，0 最快；macOS 和 Windows 上开子进程还可能卡住

    形状:
        每批两个 (b, t) 的整数张量

    返回:
        DataLoader: 每次迭代给出 (input_batch, target_batch)

    出处: 原书 2.6 节
    """
    dataset = GPTDatasetV1(txt, tiktoken.get_encoding("gpt2"), max_length, stride)
    return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, drop_last=drop_last, num_workers=num_workers)


# %% 批大小 1，步幅 1
# 不打乱次序，才好与书上核对；训练时要打乱（shuffle=True），免得模型总按同一个先后次序学。
dataloader = create_dataloader_v1(raw_text, batch_size=1, max_length=4, stride=1, shuffle=False)
data_iter = iter(dataloader)
first_batch = next(data_iter)
second_batch = next(data_iter)
print("\n第 1 批（输入，目标）：", first_batch)
print("第 2 批（输入，目标）：", second_batch)
# 步幅 1：第 2 批的输入，就是第 1 批的输入往后挪了一个词元，两批有 3 个词元是重复的。

# %% 批大小 8，步幅 4：首尾相接，互不重叠
dataloader = create_dataloader_v1(raw_text, batch_size=8, max_length=4, stride=4, shuffle=False)
inputs, targets = next(iter(dataloader))
print("\n输入", tuple(inputs.shape), "(b, t)")
print(inputs)
print("目标", tuple(targets.shape), "(b, t)")
print(targets)
# drop_last=True（默认）：最后凑不满一批的几个样本丢掉，免得那一小批的梯度噪声特别大。
num_samples = len(dataloader.dataset)
dropped = num_samples - len(dataloader) * dataloader.batch_size
print(f"{num_samples} 个样本分成 {len(dataloader)} 批，丢掉 {dropped} 个")

# %% max_length 与 stride 怎样决定样本数
# 窗口从第 0、stride、2·stride …个词元开始，最后一个窗口之后还要剩 1 个词元作目标：
#     n = (词元总数 - t - 1) // stride + 1
# stride < t：同一个词元反复出现，容易过拟合；stride = t：每个词元正好用一次；stride > t：中间有词元谁也没用上。
print(f"\nt = 4，全文 {len(enc_text)} 个词元")
counts = {}
for stride in [1, 2, 4, 8]:
    counts[stride] = len(GPTDatasetV1(raw_text, tokenizer, max_length=4, stride=stride))
    used = {start * stride + offset for start in range(counts[stride]) for offset in range(4)}  # 窗口盖住了哪些位置
    print(f"  stride {stride}　样本 {counts[stride]:>5} 个　作过输入的词元 {len(used):>5} 个")

# %% 这个数字对吗？
print("\n这个数字对吗？")
windows = GPTDatasetV1(raw_text, tokenizer, max_length=4, stride=2)
starts = range(0, len(enc_text) - 4, 2)  # 原书的循环
looped = torch.tensor([[enc_text[i : i + 4], enc_text[i + 1 : i + 5]] for i in starts])  # (n, 2, t)
same = torch.equal(windows.input_ids, looped[:, 0]) and torch.equal(windows.target_ids, looped[:, 1])
confirm("整篇的样本，与原书的循环切出的逐个相同", same, "unfold 之前没有去掉最后一个，或目标没有右移")
confirm("目标 = 输入右移一位", torch.equal(inputs[:, 1:], targets[:, :-1]), "目标的起点没有 +1")
shifted = torch.equal(second_batch[0], first_batch[1])
confirm("步幅 1：第 2 批的输入 = 第 1 批的目标", shifted, "stride 不是 1，或打乱了次序")
joined = inputs.flatten().tolist() == enc_text[: inputs.numel()]
confirm("步幅 4：把样本首尾相接，就是原来的文本", joined, "stride 与 max_length 不相等")
formula = all(count == (len(enc_text) - 4 - 1) // step + 1 for step, count in counts.items())
confirm("样本数 = (词元总数 - t - 1) // stride + 1", formula, "最后一个窗口多取或少取了")
if is_book:
    total, first, last = len(enc_text), first_batch[0].tolist(), targets[-1].tolist()
    confirm(f"词元数与原书一致：5145（得到 {total}）", total == 5145, "文件不是原书那一份，或分词器不是 GPT-2 的")
    confirm("x 与原书一致：[290, 4920, 2241, 287]", x == [290, 4920, 2241, 287], "没有先去掉 50 个词元")
    confirm("第 1 批与原书一致：[[40, 367, 2885, 1464]]", first == [[40, 367, 2885, 1464]], "shuffle 没有设为 False")
    confirm("8 × 4 那一批，目标的最后一行与原书一致", last == [3285, 326, 11, 287], "stride 不是 4")

# %% 动手改
# 1. 把批大小 8 那一格改成 max_length=8、stride=2：相邻两行重叠 6 个词元，自查里"首尾相接"那条变成 ✗；
#    用原书的文本时，"8 × 4 那一批"也变成 ✗。（原书练习 2.2 的一问）
# 2. 把批大小 1 那一格改成 shuffle=True 再运行两次：两次的第 1 批不同（所以自查里说到第 1 批的变成 ✗）；
#    目标仍是输入右移一位：打乱的是样本的次序，不是样本里面。
# 3. 把 enc_text[50:] 改成 enc_text：用原书的文本，会看到 "I HAD always" 里的 HAD 拆成了 " H" 和 "AD"：全大写少见。
#    （自查里 x 那条变成 ✗：取的不再是书上那 4 个词元）
