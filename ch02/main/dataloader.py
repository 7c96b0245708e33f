"""第 2 章 · 2.6–2.8 节　从一段文本到一批张量（data loader）

读完、敲完这个脚本，你应该能不看书回答：
    1. 训练大模型不需要人工标注，那"正确答案"从哪里来？
    2. max_length 和 stride 各管什么？stride 小于 max_length 时发生了什么？
    3. 词元编号是怎样变成模型的输入向量的？为什么还要加上位置？

运行：
    python ch02/main/dataloader.py                            # 原书 2.6–2.8 节的例子
    python ch02/main/dataloader.py --max-length 8 --stride 2  # 换个窗口，看样本怎样重叠
    python ch02/main/dataloader.py --text 我的文章.txt        # 换成自己的文本
    约 1 秒，0.3 GB（2 核 CPU）

形状记号（全书统一）：
    b 批大小　　t 序列长度（token 数）　　d 嵌入维度　　n 样本数
"""

import argparse
import os
import sys
from pathlib import Path

import tiktoken
import torch
from torch.utils.data import DataLoader, Dataset


# region 沿用（含注释） ch02/main: GPTDatasetV1, create_dataloader_v1
class GPTDatasetV1(Dataset):
    """把一段长文本切成许多等长的"输入—目标"样本。

    目标就是输入整体右移一个词元：每个位置的正确答案，是文本里紧跟着的那个词元。
    文本自己就是标注，所以训练大模型不需要人工标注（自监督，self-supervised）。

    参数:
        txt (str): 原始文本
        tokenizer: 有 encode 方法的分词器
        max_length (int): 每个样本的词元数 t，不能超过模型的上下文长度
        stride (int): 相邻两个样本的起点隔多少个词元。等于 max_length 时首尾相接、互不重叠；
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
        ids = torch.tensor(token_ids)
        # unfold 是"滑动窗口"：每隔 stride 取 max_length 个。它只记住每个窗口从哪里开始，不复制数据，
        # 所以一千万个词元也是瞬间完成；原书在这里用循环造了一个张量列表，样本完全相同，但要几秒和几百 MB。
        self.input_ids = ids[:-1].unfold(0, max_length, stride)  # (n, t)
        self.target_ids = ids[1:].unfold(0, max_length, stride)  # (n, t)　整体右移一位

    def __len__(self):
        """返回样本数 n。

        返回:
            int: 样本数
        """
        return len(self.input_ids)

    def __getitem__(self, idx):
        """取第 idx 个样本。

        参数:
            idx (int): 样本编号

        返回:
            tuple[Tensor, Tensor]: 输入和目标，各 (t,)
        """
        return self.input_ids[idx], self.target_ids[idx]


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


# region 沿用 setup/find_data.py: find_data, read_text
def find_data(*names):
    """到几个数据文件夹里依次找，返回找到的第一个；都没有，就说先运行哪条命令，退出码 2。（详解见 setup/find_data.py）"""
    here = Path(__file__ if "__file__" in globals() else "x").resolve()
    root = next((folder for folder in here.parents if (folder / "setup" / "data").is_dir()), Path())
    for folder in [os.environ.get("LLM_DATA_DIR"), root / "setup" / "downloads", root / "setup" / "data", root / "ch05" / "outputs"]:
        for name in names:
            if folder and (Path(folder) / name).exists():
                return Path(folder) / name
    commands = {"tiktoken": "setup/prepare.py", "gpt_mini.pth": "ch05/main/gpt_train.py（约 90 秒）", "gpt2-124M.pth": "ch05/main/gpt_download.py"}
    print(f"找不到 {names[0]}，请先运行 python {commands.get(names[0], 'setup/download.py')}", file=sys.stderr)
    sys.exit(2)


def read_text(path):
    """读一个文本文件；不是能用来训练的文本时，用一句中文说清楚。（详解见 setup/find_data.py）"""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise ValueError(f"读不了 {path}：文件不存在，或不是 UTF-8 编码的文本（请用编辑器另存为 UTF-8）") from None
    if "\0" in text or not text.strip():
        raise ValueError(f"{path} 是空的，或是二进制文件，请换一个文本文件")
    return text


# endregion

os.environ["TIKTOKEN_CACHE_DIR"] = str(find_data("tiktoken"))  # GPT-2 的词表由 setup/run.sh 放好，不联网


def main():
    """文本 → 词元编号 → 批 → 输入嵌入，数字与原书 2.6–2.8 节逐位相同。"""
    parser = argparse.ArgumentParser(description="2.6–2.8 节　从一段文本到一批张量")
    parser.add_argument("--text", help="文本文件，UTF-8 编码（默认：找到的 the-verdict.txt，没有就用自带的英文短篇）")
    parser.add_argument("--max-length", type=int, default=4, help="每个样本的词元数（默认：4，与原书相同）")
    parser.add_argument("--stride", type=int, default=4, help="相邻样本的起点隔多少个词元（默认：4，与原书相同）")
    parser.add_argument("--batch-size", type=int, default=8, help="每批几个样本（默认：8，与原书相同）")
    args = parser.parse_args()
    for name in ("max_length", "stride", "batch_size"):
        if not 1 <= getattr(args, name) <= 10**9:
            parser.error(f"--{name.replace('_', '-')} 应在 1 到 10 亿之间，不能是 {getattr(args, name)}")

    try:
        path = args.text or find_data("the-verdict.txt", "story-en.txt")
        text = read_text(path)
        loader = create_dataloader_v1(text, args.batch_size, args.max_length, args.stride, shuffle=False)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    dataset = loader.dataset
    if len(loader) == 0:
        parser.error(f"只有 {len(dataset)} 个样本，凑不满一批 {args.batch_size} 个，请改小 --batch-size")
    print(f"文本　　　{path}")
    print(f"样本　　　{len(dataset)} 个，每个 {args.max_length} 个词元，分成 {len(loader)} 批")

    inputs, targets = next(iter(loader))
    print(f"\n第一批输入　{tuple(inputs.shape)}　(b, t)")
    print(inputs)
    print("第一批目标：每一行都是输入右移一位")
    print(targets)

    # 2.7–2.8 节：编号 → 词嵌入，再加上位置嵌入。
    # 词嵌入是一张 50257 × 256 的表，编号是几就取第几行；刚开始是随机数，训练会把它改成有意义的向量。
    torch.manual_seed(123)
    token_embedding_layer = torch.nn.Embedding(50257, 256)
    token_embeddings = token_embedding_layer(inputs)  # (b, t, d)
    # 注意力本身分不清次序（"狗咬人"和"人咬狗"对它一样），所以给每个位置也准备一个向量，加上去。
    pos_embedding_layer = torch.nn.Embedding(args.max_length, 256)
    pos_embeddings = pos_embedding_layer(torch.arange(args.max_length))  # (t, d)
    input_embeddings = token_embeddings + pos_embeddings  # (b, t, d)　(t, d) 会自动对每个样本各加一次（广播）
    print(f"\n词嵌入　　{tuple(token_embeddings.shape)}　(b, t, d)")
    print(f"位置嵌入　{tuple(pos_embeddings.shape)}　(t, d)")
    print(f"输入嵌入　{tuple(input_embeddings.shape)}　(b, t, d)　这就是模型真正的输入")

    print("\n这个数字对吗？")
    confirm("目标 = 输入右移一位", torch.equal(inputs[:, 1:], targets[:, :-1]), "target 的起点没有 +1")
    if args.stride == args.max_length:
        confirm("首尾相接：第 1 行的最后一个目标，是第 2 行的第一个输入", len(inputs) < 2 or targets[0, -1] == inputs[1, 0], "stride 与 max_length 不相等")
    if Path(path).name == "the-verdict.txt" and args.max_length == 4:
        confirm("前 4 个词元与原书一致：[40, 367, 2885, 1464]（I HAD always）", inputs[0].tolist() == [40, 367, 2885, 1464], "词表不是 GPT-2 的")


if __name__ == "__main__":
    main()
