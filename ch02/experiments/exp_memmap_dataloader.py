"""第 2 章 · 实验　一亿个词元，怎样瞬间打开？

问题：　书上的数据加载器把每个样本做成一个张量，放进列表。词元多到一亿，换成磁盘上的 uint16 分片，能省多少时间和内存？取批会慢吗？
先猜：　取一批，从内存里的列表、从系统缓存着的文件、从真的磁盘，三种各差多少？（先想 10 秒，再运行）
看点：　① 打开要多久、读了多少、自己占多少内存；② 每秒几批，几轮的散布；文件刚写过或刚读过，就在系统的页缓存里，那不算从磁盘读：
        脚本先请系统把它赶出缓存，"缺页去磁盘"的次数就不再是 0；③ 两种加载器给出的每一批都相同。
动手改：1. 把两处 __getitems__ = take 都注释掉：退回一个样本一个样本地取，批还是一样的，两种都慢下来。
        2. 把 SHARD_TOKENS 改小 100 倍：分片多了，打开慢一点；窗口不跨分片，样本会少几个。
        3. 把 np.memmap 换成 np.fromfile（去掉 mode）：打开时要把文件读完，第三条自查变成 ✗。

运行：
    python ch02/experiments/exp_memmap_dataloader.py                        # 图片写到 ch02/outputs/
    python ch02/experiments/exp_memmap_dataloader.py --text 我的文章.txt    # 先试试自己的文本
    约 20 秒，1.0 GB，临时占 0.4 GB 磁盘（2 核 CPU）

形状记号：b 批大小　t 窗口长度，也就是 max_length　n 样本数
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from bisect import bisect_right
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import tiktoken
import torch
import zhplot  # noqa: F401　导入它，图上就能写中文
from torch.utils.data import DataLoader, Dataset

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
MAX_LENGTH, STRIDE, BATCH_SIZE = 256, 128, 4  # 与 create_dataloader_v1 的默认值相同
SHARD_TOKENS = 20_000_000  # 每个分片最多几个词元；分片小，坏一个只丢一个，也方便分给几台机器
BATCHES, ROUNDS = 400, 9  # 测速时一轮取几批，共几轮


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


# region 沿用 ch03/experiments/exp_attention_complexity.py: quartiles, compare
def quartiles(values):
    """量了许多次，中间一半落在哪里。只报一个平均，看不出机器忙不忙。（详解见 ch03/experiments/exp_attention_complexity.py）"""
    return tuple(statistics.quantiles(values, n=4, method="inclusive"))


def compare(values, reference):
    """甲是乙的几倍；两边中间的一半重叠了，就说分不出。（详解见 ch03/experiments/exp_attention_complexity.py）"""
    (low, middle, high), (floor, center, ceiling) = quartiles(values), quartiles(reference)
    ratio = f"{middle / center:.2f} 倍"
    return ratio if high < floor or low > ceiling else f"分不出（中位数是 {ratio}）"


# endregion


class ListDataset(Dataset):
    """书上 2.6 节原来的写法：用循环切窗口，每个样本做成两个张量，都放在列表里；另加一个一次取一批的方法，比较才公平。

    参数:
        token_ids (Sequence[int]): 词元编号
        max_length (int): 窗口长度 t
        stride (int): 步幅
    """

    def __init__(self, token_ids, max_length, stride):
        self.input_ids, self.target_ids = [], []
        for i in range(0, len(token_ids) - max_length, stride):
            self.input_ids.append(torch.tensor(token_ids[i : i + max_length]))
            self.target_ids.append(torch.tensor(token_ids[i + 1 : i + max_length + 1]))

    def __len__(self):
        """样本数。

        返回:
            int: n
        """
        return len(self.input_ids)

    def __getitem__(self, idx):
        """取一个样本。

        参数:
            idx (int): 第几个

        返回:
            tuple[Tensor, Tensor]: 输入和目标，各 (t,)
        """
        return self.input_ids[idx], self.target_ids[idx]

    def take(self, indices):
        """一次取一批。

        参数:
            indices (list[int]): 哪几个样本

        返回:
            tuple[Tensor, Tensor]: 输入和目标，各 (b, t)
        """
        inputs = torch.stack([self.input_ids[i] for i in indices])  # (b, t)
        return inputs, torch.stack([self.target_ids[i] for i in indices])  # (b, t)

    __getitems__ = take  # DataLoader 发现有这个方法，就一次要一批，不再一个一个地取、再拼起来


def write_shards(token_ids, folder, shard_tokens=None):
    """把词元编号写成几个 uint16 分片，再写一份目录 index.json。

    GPT-2 的编号最大 50256，小于 2 的 16 次方，每个词元 2 字节就够；列表里的张量每个要 8 字节。

    参数:
        token_ids (np.ndarray): 词元编号
        folder (Path): 写到哪个文件夹
        shard_tokens (int 或 None): 每个分片最多几个词元，None 表示 SHARD_TOKENS

    异常:
        ValueError: 编号超出 uint16，写进去会变成别的数
    """
    if len(token_ids) and int(token_ids.max()) >= 2**16:
        raise ValueError(f"编号 {int(token_ids.max())} 超出了 uint16 能表示的 65535，词表这么大时要改用 uint32")
    shard_tokens, index = shard_tokens or SHARD_TOKENS, {}
    for start in range(0, len(token_ids), shard_tokens):
        part = token_ids[start : start + shard_tokens]
        name = f"shard_{len(index):04}.bin"
        part.astype("<u2", copy=False).tofile(folder / name)  # <u2：低位在前的 uint16，写明了，换台机器读也一样
        index[name] = len(part)
    # 目录最后写：它在，就说明分片都写完了。先写临时文件再改名，不会有写了一半的目录。
    (folder / "index.json.part").write_text(json.dumps(index), encoding="utf-8")
    os.replace(folder / "index.json.part", folder / "index.json")


class ShardDataset(Dataset):
    """磁盘上的 uint16 分片，当作一个数据集：打开时什么也不读，取到哪个窗口才读哪几页。

    参数:
        folder (Path): write_shards 写的文件夹
        max_length (int): 窗口长度 t
        stride (int): 步幅

    异常:
        ValueError: 没有目录、分片不见了或长度不对、一个样本也切不出
    """

    def __init__(self, folder, max_length, stride):
        try:
            index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise ValueError(f"{folder} 里没有完好的 index.json：分片没有写完，请重新写一遍") from None
        self.max_length, self.windows, self.starts = max_length, [], [0]  # starts：每个分片的第一个样本是第几个
        for name, tokens in index.items():
            size = (folder / name).stat().st_size if (folder / name).is_file() else 0
            if size != tokens * 2:
                raise ValueError(f"分片 {name} 应有 {tokens * 2} 字节，实际 {size} 字节：复制时被截断了，请重新复制或重新写")
            if tokens <= max_length:
                continue
            # 内存映射（memmap）：假装整个文件在内存里，操作系统在用到时才读进来，内存紧张时又自己丢掉。
            ids = np.memmap(folder / name, dtype="<u2", mode="r")
            # 每个窗口多取一个，前 t 个是输入，后 t 个是目标。sliding_window_view 与 unfold 一样，不复制。
            self.windows.append(np.lib.stride_tricks.sliding_window_view(ids, max_length + 1)[::stride])  # (n, t + 1)
            self.starts.append(self.starts[-1] + len(self.windows[-1]))
        if not self.windows:
            raise ValueError(f"没有一个分片超过 {max_length} 个词元，凑不出一个样本")

    def __len__(self):
        """样本数。

        返回:
            int: n
        """
        return self.starts[-1]

    def __getitem__(self, idx):
        """取一个样本。

        参数:
            idx (int): 第几个

        返回:
            tuple[Tensor, Tensor]: 输入和目标，各 (t,)
        """
        inputs, targets = self.take([idx])
        return inputs[0], targets[0]

    def take(self, indices):
        """一次取一批。

        参数:
            indices (list[int]): 哪几个样本

        返回:
            tuple[Tensor, Tensor]: 输入和目标，各 (b, t)
        """
        inputs = np.empty((len(indices), self.max_length), np.int64)  # (b, t)　嵌入层要 int64，复制时顺便转好
        targets = np.empty_like(inputs)
        for row, i in enumerate(indices):
            shard = bisect_right(self.starts, i) - 1  # 这个样本在第几个分片
            window = self.windows[shard][i - self.starts[shard]]  # (t + 1,)　到这里才真的从磁盘上读
            inputs[row], targets[row] = window[:-1], window[1:]
        return torch.from_numpy(inputs), torch.from_numpy(targets)

    __getitems__ = take  # 同上


def make_loader(dataset, shuffle):
    """两种数据集共用：除了拼批的办法，别的都相同。

    参数:
        dataset (Dataset): 数据集
        shuffle (bool): 打乱吗

    返回:
        DataLoader: 数据加载器
    """
    collate = (lambda batch: batch) if hasattr(dataset, "__getitems__") else None  # take 给的已经是一批了，不用再拼
    return DataLoader(dataset, BATCH_SIZE, shuffle=shuffle, drop_last=True, collate_fn=collate)


def random_shards(folder, tokens):
    """写一份随机编号的分片：再多的真文本也是编号，测速用随机的就够了。

    参数:
        folder (Path): 写到哪个文件夹
        tokens (int): 几个词元

    返回:
        Path: folder
    """
    folder.mkdir()
    generator = np.random.default_rng(123)
    # 编号先放在磁盘上，不在内存里：不然用过、又放回的内存，会混进后面量的内存里。
    ids = np.memmap(folder / "ids", dtype="<u2", mode="w+", shape=(tokens,))
    for start in range(0, tokens, 1_000_000):
        ids[start : start + 1_000_000] = generator.integers(0, 50257, min(1_000_000, tokens - start), dtype=np.uint16)
    write_shards(ids, folder)
    del ids  # 放开映射，Windows 才删得掉
    (folder / "ids").unlink()
    return folder


def leave_cache(folder):
    """请系统把一个文件夹里的文件赶出页缓存，下次就得从磁盘读。

    参数:
        folder (Path): 文件夹；里面的文件不能还映射着，映射着的页赶不走

    返回:
        bool: 这个系统做得到吗（Linux 可以；macOS、Windows 没有这个调用）
    """
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in folder.glob("*.bin"):
        with open(path, "rb+") as file:
            os.fsync(file.fileno())  # 还没写到磁盘上的页也赶不走，先写下去
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def enter_cache(folder):
    """把一个文件夹里的文件读一遍，它们就都在页缓存里了。

    参数:
        folder (Path): 文件夹
    """
    for path in folder.glob("*.bin"):
        with open(path, "rb") as file:
            while file.read(2**20):
                pass


def counters():
    """这个进程的几个计数，量之前和之后各看一次，相减。

    返回:
        dict: "自己" 现在占的内存（MB，不算从文件映射来的）、"读" 用 read 读过几 MB、"缺页" 有几次缺页要去磁盘；系统不告诉的是 nan
    """
    result = dict.fromkeys(("自己", "读", "缺页"), float("nan"))
    try:  # 只有 Linux 有 /proc
        _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
        result["自己"] = (resident - shared) * os.sysconf("SC_PAGE_SIZE") / 1e6
        result["读"] = int(Path("/proc/self/io").read_text().split()[1]) / 1e6
        result["缺页"] = int(Path("/proc/self/stat").read_text().rsplit(") ", 1)[1].split()[9])
    except (OSError, IndexError, ValueError):
        pass
    return result


def opening(build):
    """建一个数据集，量打开的时间、多占的内存、读了多少。

    参数:
        build (callable): 没有参数，返回数据集

    返回:
        dict: "秒"、"自己"（MB）、"读"（MB）、"样本"、"数据集"
    """
    before, start = counters(), time.perf_counter()
    dataset = build()
    seconds, after = time.perf_counter() - start, counters()
    return {"秒": seconds, "自己": max(after["自己"] - before["自己"], 0), "读": after["读"] - before["读"], "样本": len(dataset), "数据集": dataset}


def fetch(dataset, seed, batches):
    """打乱，取几批，量每批几秒。

    参数:
        dataset (Dataset): 数据集
        seed (int): 怎样打乱
        batches (int): 取几批

    返回:
        tuple[float, float]: 每批几秒；有几次缺页要去磁盘
    """
    torch.manual_seed(seed)
    loader = iter(make_loader(dataset, shuffle=True))
    next(loader)  # 头一批要先排出整个次序，不算
    before, start = counters(), time.perf_counter()
    count = sum(1 for _ in zip(range(batches), loader))
    return (time.perf_counter() - start) / max(count, 1), counters()["缺页"] - before["缺页"]


def draw(opened, rates, path):
    """画图：打开的时间、自己占的内存、每秒几批。

    参数:
        opened (dict): 名字 → opening 的结果
        rates (dict): 名字 → 每一轮每秒几批
        path (Path): 图片写到哪里
    """
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.2), layout="constrained", width_ratios=(1, 1, 1.2))
    names = list(opened)
    seconds, memory = [opened[name]["秒"] for name in names], [np.nan_to_num(opened[name]["自己"]) for name in names]
    colors = ["C1" if "列表" in name else "C0" for name in names]
    axes[0].scatter(seconds, names, color=colors, zorder=3)  # 对数轴没有 0，画条形的话长短没有意义，所以画点
    for name, value in zip(names, seconds):
        axes[0].annotate(f"{value:.4f}", (value, name), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=9)
    axes[0].set(xscale="log", title="打开要几秒（对数轴）", xlim=(min(seconds) / 5, max(seconds) * 5), ylim=(len(names) - 0.5, -0.7))
    axes[0].grid(axis="x", alpha=0.3)
    axes[1].bar_label(axes[1].barh(names, memory, color=colors), [f"{value:,.0f}" for value in memory], padding=3, fontsize=9)
    axes[1].set(title="打开之后自己占的内存（MB）", xlim=(0, max(*memory, 1) * 1.3), ylim=(len(names) - 0.5, -0.7))
    for row, values in enumerate(rates.values()):
        low, middle, high = quartiles(values)
        axes[2].scatter(values, [row] * len(values), s=10, color="0.6")
        axes[2].plot([low, high], [row, row], linewidth=7, alpha=0.5, color="C0", solid_capstyle="butt")
        axes[2].plot(middle, row, "k|", markersize=13)
    axes[2].set_yticks(range(len(rates)), list(rates))
    axes[2].set(title="每秒几批（点：一轮；粗线：四分位）", xlim=(0, None), ylim=(len(rates) - 0.5, -0.5))
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    """先在真的文本上证明相同，再放大到一亿个词元。"""
    parser = argparse.ArgumentParser(description="实验　内存映射的数据加载器")
    parser.add_argument("--text", help="用来核对的文本，UTF-8 编码（默认：找到的 the-verdict.txt，没有就用自带的英文短篇）")
    parser.add_argument("--quick", action="store_true", help="规模缩小到十分之一")
    args = parser.parse_args()
    try:
        path = args.text or find_data("the-verdict.txt", "story-en.txt")
        token_ids = tiktoken.get_encoding("gpt2").encode_ordinary(read_text(path))
        if len(token_ids) <= MAX_LENGTH:
            raise ValueError(f"文本只有 {len(token_ids)} 个词元，凑不出一个长 {MAX_LENGTH} 的样本（目标还要多 1 个），请换长一点的文本")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    big, small, batches = (10_000_000, 1_000_000, 100) if args.quick else (100_000_000, 10_000_000, BATCHES)

    with tempfile.TemporaryDirectory() as temporary:
        text = Path(temporary) / "text"
        text.mkdir()
        write_shards(np.array(token_ids), text)
        print(f"一、真的文本　{path}　{len(token_ids):,} 个词元，写成 {(text / 'shard_0000.bin').stat().st_size:,} 字节")
        listed, sharded = ListDataset(token_ids, MAX_LENGTH, STRIDE), ShardDataset(text, MAX_LENGTH, STRIDE)
        same = len(listed) == len(sharded)
        for shuffle in (False, True):
            both = []
            for dataset in (listed, sharded):
                torch.manual_seed(123)
                both.append(list(make_loader(dataset, shuffle)))
            same = same and all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(*both))
        print(f"  {len(listed)} 个样本；打乱与不打乱，每一批都{'相同' if same else '不同'}")
        del dataset, sharded

        print(f"\n二、打开　窗口 {MAX_LENGTH}，步幅 {STRIDE}", flush=True)
        folders = {tokens: random_shards(Path(temporary) / str(tokens), tokens) for tokens in (big, small)}
        small_ids = np.concatenate([np.fromfile(path, "<u2") for path in sorted(folders[small].glob("*.bin"))]).astype(np.int64)
        names = [f"{big // 10_000} 万，分片", f"{small // 10_000} 万，分片", f"{small // 10_000} 万，列表"]
        builds = [lambda: ShardDataset(folders[big], MAX_LENGTH, STRIDE), lambda: ShardDataset(folders[small], MAX_LENGTH, STRIDE), lambda: ListDataset(small_ids, MAX_LENGTH, STRIDE)]
        opened = {}
        for name, build in zip(names, builds):
            row = opened[name] = opening(build)
            print(f"  {name}　{row['秒']:.4f} 秒　读了 {row['读']:.1f} MB　自己占 {row['自己']:.1f} MB　{row['样本']:,} 个样本", flush=True)
        huge, shard, listing = opened.values()
        picked = [0, 1, shard["样本"] - 1] if shard["样本"] == listing["样本"] else [0, 1]  # 分成几片时窗口不跨片，样本少几个
        two = [torch.equal(a, b) for i in picked for a, b in zip(shard["数据集"][i], listing["数据集"][i])]
        listed = listing.pop("数据集")
        for row in (huge, shard):
            row["数据集"] = None  # 放开映射，才赶得出页缓存

        print(f"\n三、取批　每批 {BATCH_SIZE} 个，打乱后取 {batches} 批，几种轮流，共 {ROUNDS} 轮")
        rates, faults = {}, {}
        for turn in range(ROUNDS + 1):
            for name, tokens in ((f"{names[0]}，从磁盘", big), (f"{names[0]}，从页缓存", big), (f"{names[1]}，从页缓存", small), (names[2], None)):
                if "磁盘" in name and not leave_cache(folders[big]):
                    continue
                if "页缓存" in name:
                    enter_cache(folders[tokens])
                dataset = ShardDataset(folders[tokens], MAX_LENGTH, STRIDE) if tokens else listed
                seconds, fault = fetch(dataset, turn, batches)
                del dataset
                if turn:  # 第一轮是热身，不算
                    rates.setdefault(name, []).append(1 / seconds)
                    faults.setdefault(name, []).append(fault)
        for name, values in rates.items():
            low, middle, high = quartiles(values)
            print(f"  {name}　每秒 {middle:,.0f} 批（四分位 {low:,.0f}–{high:,.0f}）　缺页去磁盘 {statistics.median(faults[name]):.0f} 次")
        print("  （缺页一次，系统会顺便预读后面一大段，所以次数比批数少）")
        draw(opened, rates, OUTPUTS / "memmap_dataloader.png")

    print(f"图已写到 {OUTPUTS / 'memmap_dataloader.png'}")
    print(f"\n所以：{small:,} 个词元，列表要 {listing['秒']:.1f} 秒才准备好，自己占 {listing['自己']:.0f} MB；分片 {shard['秒'] * 1e3:.1f} 毫秒。")
    size = 2 * big / 1e6
    read = "" if huge["读"] != huge["读"] else f"，读了 {huge['读']:.1f} MB（文件有 {size:.0f} MB）"
    print(f"词元多到 {big // small} 倍，分片打开用了 {huge['秒'] * 1e3:.1f} 毫秒{read}。")
    kinds = list(rates)
    print(f"取批的速度（同样 {small:,} 个词元，都一次取一批）：分片从页缓存，与列表的比，{compare(rates[kinds[-2]], rates[kinds[-1]])}。")
    if "磁盘" in kinds[0]:
        print(f"从磁盘，与从页缓存的比，{compare(rates[kinds[0]], rates[kinds[1]])}。", end="")
        print("（虚拟机的磁盘，外面的机器可能还缓存着一份；机械硬盘会慢得多。）")
    else:
        print("这个系统不能把文件赶出页缓存，没有量从磁盘读的。")

    print("\n这个数字对吗？")
    confirm("真的文本上，两种加载器的每一批都相同", same, "窗口或步幅不一致，或洗牌的种子不同")
    confirm(f"随机的编号上，抽查的 {len(picked)} 个样本也相同", all(two), "编号超过 65535，被 uint16 截断了")
    if huge["读"] == huge["读"]:
        confirm(f"打开 {size:.0f} MB 的分片，读了不到 1 MB（{huge['读']:.2f} MB）", huge["读"] < 1, "打开时读了文件，例如用了 np.fromfile")


if __name__ == "__main__":
    main()
