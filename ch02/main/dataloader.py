"""第 2 章 · 2.6–2.8 节　从一段文本到一批张量（data loader）

读完、敲完这个脚本，你应该能不看书回答：
    1. 训练大模型不需要人工标注，那"正确答案"从哪里来？
    2. max_length 和 stride 各管什么？stride 小于 max_length 时发生了什么？
    3. 词元编号是怎样变成模型的输入向量的？为什么还要加上位置？

运行：
    python ch02/main/dataloader.py                        # 原书 2.6–2.8 节的例子；想换个窗口，改下面的常量
    python ch02/main/dataloader.py --text 我的文章.txt    # 换成自己的文本
    约 1 秒，0.3 GB（2 核 CPU）

形状记号（全书统一）：b 批大小　t 序列长度（词元数）　d 嵌入维度　n 样本数
"""

import argparse
import os
import sys
from pathlib import Path

import tiktoken
import torch
from torch.utils.data import DataLoader, Dataset

# 改这里
MAX_LENGTH = 4  # 每个样本的词元数 t；4 是为了打印得下，训练时是几百到 1024
STRIDE = 4  # 相邻样本的起点隔多少个词元；等于 MAX_LENGTH 就首尾相接，改成 1 或 2，看样本怎样重叠
BATCH_SIZE = 8  # 一批几个样本
VOCAB_SIZE = 50257  # GPT-2 的词表大小，词嵌入表就有这么多行
OUTPUT_DIM = 256  # 嵌入维度 d；GPT-2 small 是 768


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


# region 沿用（含注释） ch02/main: GPTDatasetV1, create_dataloader_v1
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


# endregion


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def main():
    """文本 → 词元编号 → 批 → 输入嵌入，数字与原书 2.6–2.8 节逐位相同。"""
    parser = argparse.ArgumentParser(description="2.6–2.8 节　从一段文本到一批张量")
    parser.add_argument("--text", help="文本文件，UTF-8 编码（默认：原书的 the-verdict.txt，没有就用自带的英文短篇）")
    args = parser.parse_args()
    path = Path(args.text or find_data("the-verdict.txt", "story-en.txt"))

    # ① 文本 → 样本 → 批。不打乱次序，才好与书上核对；不丢最后一批，短文本也看得到。
    try:
        text = path.read_text(encoding="utf-8-sig")  # -sig：去掉 Windows 记事本加在开头的 BOM
        dataloader = create_dataloader_v1(text, BATCH_SIZE, MAX_LENGTH, STRIDE, shuffle=False, drop_last=False)
    except (ValueError, OSError) as error:
        parser.error(f"用不了 {path}，要一个够长的、UTF-8 编码的文本文件：{error}")
    inputs, targets = next(iter(dataloader))
    print(f"文本　　　{path}")
    print(f"样本　　　{len(dataloader.dataset)} 个，每个 {MAX_LENGTH} 个词元，分成 {len(dataloader)} 批")
    print(f"\n第一批输入　{tuple(inputs.shape)}　(b, t)")
    print(inputs)
    print("第一批目标：每一行都是输入右移一位")
    print(targets)

    # ② 编号 → 词嵌入：编号是几，就取嵌入表的第几行。现在是随机数，训练会把它改成有意义的向量。
    torch.manual_seed(123)
    token_embedding_layer = torch.nn.Embedding(VOCAB_SIZE, OUTPUT_DIM)
    token_embeddings = token_embedding_layer(inputs)  # (b, t, d)

    # ③ 每个位置也有一个向量：光看词嵌入，同一个词元放在哪里都一样，看不出谁先谁后。
    pos_embedding_layer = torch.nn.Embedding(MAX_LENGTH, OUTPUT_DIM)
    pos_embeddings = pos_embedding_layer(torch.arange(MAX_LENGTH))  # (t, d)

    # ④ 相加：(t, d) 自动对每个样本各加一次（广播）。
    input_embeddings = token_embeddings + pos_embeddings  # (b, t, d)
    print(f"\n词嵌入　　{tuple(token_embeddings.shape)}　(b, t, d)")
    print(f"位置嵌入　{tuple(pos_embeddings.shape)}　(t, d)")
    print(f"输入嵌入　{tuple(input_embeddings.shape)}　(b, t, d)　这就是模型真正的输入")

    print("\n这个数字对吗？")
    confirm("目标 = 输入右移一位", torch.equal(inputs[:, 1:], targets[:, :-1]), "目标的起点没有 +1")
    if STRIDE == MAX_LENGTH:
        joined = torch.equal(targets[:-1, -1], inputs[1:, 0])
        confirm("首尾相接：每一行的最后一个目标，是下一行的第一个输入", joined, "样本的次序打乱了")
    if path.name == "the-verdict.txt" and MAX_LENGTH == 4:
        book = inputs[0].tolist() == [40, 367, 2885, 1464]
        confirm("前 4 个词元与原书一致：[40, 367, 2885, 1464]（I HAD always）", book, "词表不是 GPT-2 的")


if __name__ == "__main__":
    main()
