"""第 2 章 · 练习 2.2　换窗口、换步幅，样本怎样变？

题目：　用 create_dataloader_v1 建两个数据加载器，一个 max_length=2、stride=2，一个 max_length=8、stride=2，看看第一批各是什么样。
先想：　步幅都是 2，样本数会差很多吗？窗口变成 8 之后，相邻两个样本有几个词元是重复的？（先想 10 秒，再运行）
解法：　① 建好，打印第一批；② 数样本数，与公式比；③ 量相邻样本重叠几个、每个词元平均被用几遍。
动手改：1. SETTINGS 里加一行 (2, 8)：步幅比窗口大，重叠那一列写的是"跳过 6"，每个词元平均只用 0.25 遍。
        2. 把 (8, 2) 改成 (8, 1)：样本数翻倍，每个词元平均用约 8 遍。

运行：
    python ch02/experiments/exercise_2_2_window_and_stride.py
    python ch02/experiments/exercise_2_2_window_and_stride.py --text 我的文章.txt
    约 2 秒，0.3 GB（2 核 CPU）

形状记号：b 批大小　t 序列长度，也就是 max_length　n 样本数
"""

import argparse
import os
import sys
from pathlib import Path

import tiktoken
import torch
from torch.utils.data import DataLoader, Dataset

SETTINGS = [(4, 4), (2, 2), (8, 2)]  # (max_length, stride)：第一个是书上 2.6 节的，后两个是题目


# region 沿用 ch02/main: GPTDatasetV1, create_dataloader_v1
class GPTDatasetV1(Dataset):
    """把一段长文本切成许多等长的"输入—目标"样本。（详解见 ch02/main/example_03_sliding_window.py）"""

    def __init__(self, txt, tokenizer, max_length, stride):
        token_ids = tokenizer.encode(txt, allowed_special={"<|endoftext|>"})
        if len(token_ids) <= max_length:
            raise ValueError(f"文本只有 {len(token_ids)} 个词元，凑不出一个长 {max_length} 的样本（目标还要多 1 个），请换长一点的文本或改小 max_length")
        ids = torch.tensor(token_ids)
        self.input_ids = ids[:-1].unfold(0, max_length, stride)  # (n, t)
        self.target_ids = ids[1:].unfold(0, max_length, stride)  # (n, t)

    def __len__(self):
        return len(self.input_ids)

    def __getitem__(self, idx):
        return self.input_ids[idx], self.target_ids[idx]


def create_dataloader_v1(txt, batch_size=4, max_length=256, stride=128, shuffle=True, drop_last=True, num_workers=0):
    """文本 → 一批一批的（输入，目标）。（详解见 ch02/main/example_03_sliding_window.py）"""
    dataset = GPTDatasetV1(txt, tiktoken.get_encoding("gpt2"), max_length, stride)
    return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, drop_last=drop_last, num_workers=num_workers)


# endregion


# region 沿用 setup/find_data.py: find_data, read_text
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


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def main():
    """几种窗口和步幅，各建一个数据加载器，比一比。"""
    parser = argparse.ArgumentParser(description="练习 2.2　窗口与步幅")
    parser.add_argument("--text", help="文本文件，UTF-8 编码（默认：找到的 the-verdict.txt，没有就用自带的英文短篇）")
    args = parser.parse_args()
    try:
        path = args.text or find_data("the-verdict.txt", "story-en.txt")
        text = read_text(path)
        total = len(tiktoken.get_encoding("gpt2").encode(text, allowed_special={"<|endoftext|>"}))
        loaders = [create_dataloader_v1(text, batch_size=4, max_length=t, stride=s, shuffle=False, drop_last=False) for t, s in SETTINGS]
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"文本　{path}　{total:,} 个词元")

    firsts, rows = {}, []
    for (max_length, stride), loader in zip(SETTINGS, loaders):
        inputs, targets = next(iter(loader))  # (b, t)
        firsts[max_length, stride] = inputs
        print(f"\n① max_length={max_length}，stride={stride}　第一批输入 {tuple(inputs.shape)}　(b, t)")
        print(inputs)
        print("目标：每行右移一位，最后一列是新的词元", targets[:, -1].tolist())
        # 窗口从 0、stride、2·stride……开始，最后一个窗口连同它的目标要放得下：起点 + max_length ≤ total - 1。
        expected = (total - max_length - 1) // stride + 1
        rows.append((max_length, stride, len(loader.dataset), expected))

    print("\n② 样本数 n = (词元总数 - max_length - 1) // stride + 1　③ 重叠 = max_length - stride")
    for max_length, stride, n, expected in rows:
        overlap = max_length - stride
        times = n * max_length / total
        print(f"  ({max_length}, {stride})　n = {n}（公式 {expected}）　相邻样本{'重叠' if overlap >= 0 else '跳过'} {abs(overlap)} 个　每个词元平均用 {times:.2f} 遍")

    print("\n这个数字对吗？")
    confirm("样本数与公式相同", all(n == expected for _, _, n, expected in rows), "公式里的 - 1 是留给最后一个目标的")
    shared = [(t, s, batch) for (t, s), batch in firsts.items() if t > s and len(batch) > 1]
    confirm("重叠的部分逐个相同：后一个样本的开头 = 前一个样本去掉 stride 个", all(torch.equal(batch[0, s:], batch[1, : t - s]) for t, s, batch in shared), "打乱了样本的次序")
    book = Path(path).name == "the-verdict.txt" and not args.text
    if book and (2, 2) in firsts:
        answer = [[40, 367], [2885, 1464], [1807, 3619], [402, 271]]
        confirm(f"(2, 2) 与书上的答案相同：{answer}", firsts[2, 2].tolist() == answer, "步幅不是 2")
    if book and (8, 2) in firsts:
        confirm("(8, 2) 每行的开头与书上相同：40, 2885, 1807, 402", firsts[8, 2][:, 0].tolist() == [40, 2885, 1807, 402], "步幅不是 2")

    print("\n学到什么")
    print("  max_length 定每个样本有多长（一次能看多远），stride 定样本有多少；样本数几乎只由 stride 决定。")
    print("  重叠越多，同一段话被练得越多遍：样本看起来多了，新东西并没有多，小文本上更快过拟合。书上训练时取 stride = max_length，一个词元正好用一遍。")


if __name__ == "__main__":
    main()
