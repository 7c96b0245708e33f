"""第 2 章 · 实验　一亿个词元，怎样瞬间打开？

问题：　书上的数据加载器把每个样本做成一个张量，放进列表。词元多到一亿，换成磁盘上的 uint16 分片，能省多少时间和内存？
先猜：　从磁盘上读，取一批会不会比从内存里取慢？（先想 10 秒，再运行）
看点：　① 打开要多久、自己占多少内存；② 每秒几批；③ 两种加载器给出的每一批都相同。
动手改：1. 把 __getitems__ = take 那一行注释掉：退回一个样本一个样本地取，批还是一样的，但慢下来。
        2. 把 SHARD_TOKENS 改小 10 倍：分片多了 10 倍，打开慢一点，取批几乎不变；窗口不跨分片，样本会少几个。
        3. 把 np.memmap 换成 np.fromfile（去掉 mode）：打开要等它读完，内存多占一整份，取批也快不了多少。

运行：
    python ch02/experiments/exp_memmap_dataloader.py                        # 图片写到 ch02/outputs/
    python ch02/experiments/exp_memmap_dataloader.py --text 我的文章.txt    # 先试试自己的文本
    约 12 秒，1.3 GB，临时占 0.2 GB 磁盘（2 核 CPU）

形状记号：b 批大小　t 窗口长度，也就是 max_length　n 样本数
"""

import argparse
import json
import os
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
BATCHES = 3000  # 测速时取几批


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


class ListDataset(Dataset):
    """书上 2.6 节原来的写法：用循环切窗口，每个样本做成两个张量，都放在列表里。

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
        part.astype("<u2").tofile(folder / name)  # <u2：低位在前的 uint16，写明了，换台机器读也一样
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

    __getitems__ = take  # DataLoader 发现有这个方法，就一次要一批，不再一个一个地取、再拼起来


def whole_batch(batch):
    """已经是一批了，不用再拼。

    参数:
        batch (tuple[Tensor, Tensor]): take 给的

    返回:
        tuple[Tensor, Tensor]: 原样
    """
    return batch


def make_loader(dataset, shuffle):
    """两种数据集共用：除了拼批的办法，别的都相同。

    参数:
        dataset (Dataset): 数据集
        shuffle (bool): 打乱吗

    返回:
        DataLoader: 数据加载器
    """
    collate = whole_batch if hasattr(dataset, "__getitems__") else None
    return DataLoader(dataset, BATCH_SIZE, shuffle=shuffle, drop_last=True, collate_fn=collate)


def memory_mb():
    """这个进程现在占多少内存。

    返回:
        tuple[float, float]: 自己的内存、从文件映射来的（系统可随时收回），单位 MB；量不出时是两个 nan
    """
    try:
        _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())  # 只有 Linux 有
    except OSError:
        return float("nan"), float("nan")
    page = os.sysconf("SC_PAGE_SIZE") / 1e6
    return (resident - shared) * page, shared * page


def measure(build):
    """建一个数据集，量打开的时间、多占的内存、每秒几批。

    参数:
        build (callable): 没有参数，返回数据集

    返回:
        dict: 秒、自己的内存、映射的内存（MB）、每秒几批、数据集、样本数
    """
    own, mapped = memory_mb()
    start = time.perf_counter()
    dataset = build()
    seconds = time.perf_counter() - start
    torch.manual_seed(123)
    batches = iter(make_loader(dataset, shuffle=True))
    next(batches)
    start, count = time.perf_counter(), 0
    for _ in zip(range(BATCHES), batches):
        count += 1
    rate = count / (time.perf_counter() - start) if count else float("nan")
    own_after, mapped_after = memory_mb()
    return {"秒": seconds, "自己": max(own_after - own, 0), "映射": max(mapped_after - mapped, 0), "批": rate, "数据集": dataset, "数据集大小": len(dataset)}


def draw(rows, path):
    """画图：打开的时间、多占的内存、每秒几批，三幅条形图；时间差得太远，用对数坐标。

    参数:
        rows (dict): 名字 → measure 的结果
        path (Path): 图片写到哪里
    """
    names = list(rows)
    panels = [("秒", "打开要几秒"), ("自己", "自己占的内存（MB）"), ("批", "每秒几批")]
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.2), sharey=True, layout="constrained")
    for axis, (key, title) in zip(axes, panels):
        values = [row[key] if row[key] == row[key] else 0 for row in rows.values()]  # nan（量不出内存）画成 0
        bars = axis.barh(names, values, color=["C1" if "列表" in name else "C0" for name in rows])
        axis.bar_label(bars, [f"{value:,.4f}" if key == "秒" else f"{value:,.0f}" for value in values], padding=3, fontsize=9)
        axis.set(xscale="log" if key == "秒" else "linear", title=title)
        axis.set_xlim(right=max(values) * 30 if key == "秒" else max(*values, 1) * 1.3)
    axes[0].invert_yaxis()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight", pad_inches=0.15)
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
    big, small = (10_000_000, 1_000_000) if args.quick else (100_000_000, 10_000_000)

    with tempfile.TemporaryDirectory() as temporary:
        folders = {name: Path(temporary) / name for name in ("text", "small", "big")}
        for folder in folders.values():
            folder.mkdir()
        write_shards(np.array(token_ids), folders["text"])
        print(f"一、真的文本　{path}　{len(token_ids):,} 个词元，写成 {(folders['text'] / 'shard_0000.bin').stat().st_size:,} 字节")
        listed, sharded = ListDataset(token_ids, MAX_LENGTH, STRIDE), ShardDataset(folders["text"], MAX_LENGTH, STRIDE)
        same = len(listed) == len(sharded)
        for shuffle in (False, True):
            batches = []
            for dataset in (listed, sharded):
                torch.manual_seed(123)
                batches.append(list(make_loader(dataset, shuffle)))
            same = same and all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(*batches))
        print(f"  {len(listed)} 个样本；打乱与不打乱，每一批都{'相同' if same else '不同'}")

        # 再多的真文本也是编号；要一亿个，用随机编号就够了，测的是速度。
        generator = np.random.default_rng(123)
        write_shards(generator.integers(0, 50257, big, dtype=np.uint16), folders["big"])
        small_ids = generator.integers(0, 50257, small, dtype=np.uint16)
        write_shards(small_ids, folders["small"])

        print(f"\n二、放大　窗口 {MAX_LENGTH}，步幅 {STRIDE}，每批 {BATCH_SIZE} 个，打乱后取 {BATCHES} 批")
        rows = {}
        for name, build in (
            (f"{big // 10_000} 万，分片", lambda: ShardDataset(folders["big"], MAX_LENGTH, STRIDE)),
            (f"{small // 10_000} 万，分片", lambda: ShardDataset(folders["small"], MAX_LENGTH, STRIDE)),
            (f"{small // 10_000} 万，列表", lambda: ListDataset(small_ids.tolist(), MAX_LENGTH, STRIDE)),
        ):
            rows[name] = measure(build)
            row = rows[name]
            print(f"  {name}　打开 {row['秒']:.4f} 秒　自己占 {row['自己']:.1f} MB，映射 {row['映射']:.1f} MB　每秒 {row['批']:,.0f} 批", flush=True)
        opened, shard, listing = rows.values()
        picked = [0, 1, shard["数据集大小"] - 1] if shard["数据集大小"] == listing["数据集大小"] else [0, 1]  # 分成几片时窗口不跨片，样本少几个
        two = [torch.equal(a, b) for i in picked for a, b in zip(shard["数据集"][i], listing["数据集"][i])]
        draw(rows, OUTPUTS / "memmap_dataloader.png")
        opened["数据集"] = shard["数据集"] = None  # 放开映射，Windows 才删得掉临时文件

    print(f"图已写到 {OUTPUTS / 'memmap_dataloader.png'}")
    print(f"\n所以：{small:,} 个词元，列表要 {listing['秒']:.1f} 秒才准备好，分片 {shard['秒'] * 1e3:.1f} 毫秒；取批的速度，分片是列表的 {shard['批'] / listing['批']:.1f} 倍。", end="")
    print(f"列表自己占 {listing['自己']:.0f} MB，分片 {shard['自己']:.0f} MB。" if listing["自己"] == listing["自己"] else "（这个系统上量不出内存。）")
    print(f"词元多到 {big // small} 倍，分片打开用了 {opened['秒'] * 1e3:.1f} 毫秒。", end="")
    if opened["自己"] >= 2 * big / 1e6:  # 一个词元 2 字节
        print(f"自己占 {opened['自己']:.0f} MB：整个文件都读进了内存。")
    elif opened["自己"] == opened["自己"]:
        print(f"打开时什么也没有读，自己占的 {opened['自己']:.0f} MB 多半是 DataLoader 打乱次序用的那张表（{opened['数据集大小']:,} 个样本，一个一项）。")
    else:
        print()

    print("\n这个数字对吗？")
    confirm("真的文本上，两种加载器的每一批都相同", same, "窗口或步幅不一致，或洗牌的种子不同")
    confirm(f"随机的编号上，抽查的 {len(picked)} 个样本也相同", all(two), "编号超过 65535，被 uint16 截断了")
    confirm(f"{big:,} 个词元打开不到 0.2 秒（{opened['秒']:.4f} 秒）", opened["秒"] < 0.2, "打开时读了文件，例如用了 np.fromfile")


if __name__ == "__main__":
    main()
