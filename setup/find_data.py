"""找数据：同一个脚本，有原书数据就用原书的，没有就用项目自带的

次序：命令行里明说的 → 环境变量 LLM_DATA_DIR → setup/downloads/（自己下载的）→ setup/data/（项目自带）。
所以什么都不下载也能跑；想得到与原书逐位相同的数字，把原书的 the-verdict.txt 放进前两处之一即可。

运行：
    python setup/find_data.py        # 看看每份数据现在用的是哪个文件
    约 1 秒，0.1 GB（2 核 CPU）
"""

import os
from pathlib import Path


def find_data(*names):
    """按次序到各个数据文件夹里找文件，返回找到的第一个。

    参数:
        names (str): 文件名，按优先次序；例如原书的 "the-verdict.txt" 在前，自带的 "story-en.txt" 在后

    返回:
        Path: 文件的路径

    异常:
        FileNotFoundError: 每个文件夹里都没有
    """
    # 笔记本里没有 __file__，就从当前文件夹往上找。
    here = Path(globals().get("__file__", "notebook.ipynb")).resolve()
    setup = next((folder / "setup" for folder in here.parents if (folder / "setup" / "data").is_dir()), Path("setup"))
    folders = [Path(os.environ["LLM_DATA_DIR"])] if os.environ.get("LLM_DATA_DIR") else []
    for folder in [*folders, setup / "downloads", setup / "data"]:
        for name in names:
            if (folder / name).is_file():
                return folder / name
    raise FileNotFoundError(f"找不到数据文件 {' 或 '.join(names)}，请把它放进 {setup / 'downloads'}")


def read_text(path):
    """读一个文本文件；不是能用来训练的文本时，说清楚哪里不对。

    参数:
        path (str 或 Path): 文件路径

    返回:
        str: 文件内容

    异常:
        ValueError: 文件不存在、读不了、为空、是二进制文件，或不是 UTF-8 编码
    """
    try:
        # utf-8-sig：Windows 记事本会在 UTF-8 文件开头加 3 个看不见的字节（BOM），这里顺手去掉。
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


def main():
    """列出各份数据现在用的是哪个文件。"""
    for title, names in [
        ("英文短篇（ch02、ch05）", ["the-verdict.txt", "story-en.txt"]),
        ("中文文本（ch05 --text）", ["story-zh.txt"]),
        ("短信（ch06）", ["SMSSpamCollection.tsv", "messages.tsv"]),
        ("指令（ch07）", ["instruction-data.json", "instructions.json"]),
        ("偏好数据", ["instruction-data-with-preference.json", "preferences.json"]),
        *[(f"GPT-2 {size} 的权重", [f"gpt2-{size}.safetensors"]) for size in ("124M", "355M", "774M", "1558M")],
    ]:
        try:
            path = find_data(*names)
            print(f"{title}　{path}　{path.stat().st_size:,} 字节")
        except FileNotFoundError:
            print(f"{title}　没有，要用时运行 python setup/download.py")


if __name__ == "__main__":
    main()
