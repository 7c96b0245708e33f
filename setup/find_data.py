"""找数据：同一个脚本，有原书数据就用原书的，没有就用项目自带的

次序：命令行里明说的 → 环境变量 LLM_DATA_DIR → setup/downloads/（自己下载的）→ setup/data/（项目自带）→ ch05/outputs/（自己训练的）。
所以什么都不下载也能跑；想得到与原书逐位相同的数字，把原书的 the-verdict.txt 放进前两处之一即可。

运行：
    python setup/find_data.py        # 看看每份数据现在用的是哪个文件
    约 1 秒，0.1 GB（2 核 CPU）
"""

import contextlib
import io
import os
import sys
from pathlib import Path


def find_data(*names):
    """到几个数据文件夹里依次找，返回找到的第一个；都没有，就说先运行哪条命令，退出码 2。

    GPT-2 的词表、文本、训练好的权重都归它找，所以"缺了什么、该做什么"只在这里说一次。

    参数:
        names (str): 文件或文件夹的名字，按优先次序；例如原书的 "the-verdict.txt" 在前，自带的 "story-en.txt" 在后

    返回:
        Path: 文件的路径

    异常:
        SystemExit: 每个文件夹里都没有；退出码 2
    """
    here = Path(__file__ if "__file__" in globals() else "x").resolve()  # Jupyter 里没有 __file__，就从当前文件夹往上找
    root = next((folder for folder in here.parents if (folder / "setup" / "data").is_dir()), Path())
    for folder in [os.environ.get("LLM_DATA_DIR"), root / "setup" / "downloads", root / "setup" / "data", root / "ch05" / "outputs"]:
        for name in names:
            path = Path(folder or "") / name
            if folder and (path.is_file() or any(path.glob("*"))):  # 空文件夹不算找到
                return path
    commands = {"tiktoken": "setup/prepare.py", "gpt_mini.pth": "ch05/main/gpt_train.py（约 90 秒）"}
    commands |= {f"gpt2-{size}.pth": f"ch05/main/gpt_download.py --size {size}" for size in ("124M", "355M", "774M", "1558M")}
    print(f"找不到 {names[0]}，请先运行 python {commands.get(names[0], 'setup/download.py')}", file=sys.stderr)
    sys.exit(2)


def read_text(path):
    """读一个文本文件；不是能用来训练的文本时，用一句中文说清楚。

    参数:
        path (str 或 Path): 文件路径

    返回:
        str: 文件内容，去掉了 Windows 记事本加在开头的 BOM

    异常:
        ValueError: 文件不存在、读不了、为空，或不是 UTF-8 编码的文本
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise ValueError(f"读不了 {path}：文件不存在，或不是 UTF-8 编码的文本（请用编辑器另存为 UTF-8）") from None
    if "\0" in text or not text.strip():
        raise ValueError(f"{path} 是空的，或是二进制文件，请换一个文本文件")
    return text


def main():
    """列出各份数据现在用的是哪个文件。"""
    for title, names, command in [
        ("GPT-2 的词表", ["tiktoken"], "setup/prepare.py"),
        ("英文短篇（ch02、ch05）", ["the-verdict.txt", "story-en.txt"], ""),
        ("中文文本（ch05 --text）", ["story-zh.txt"], ""),
        ("短信（ch06）", ["SMSSpamCollection.tsv", "messages.tsv"], ""),
        ("指令（ch07）", ["instruction-data.json", "instructions.json"], ""),
        ("偏好数据", ["instruction-data-with-preference.json", "preferences.json"], ""),
        ("自己训练的小模型（ch05–ch07）", ["gpt_mini.pth"], "ch05/main/gpt_train.py"),
        *[(f"GPT-2 {size} 的权重", [f"gpt2-{size}.pth"], f"ch05/main/gpt_download.py --size {size}") for size in ("124M", "355M", "774M", "1558M")],
    ]:
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # 没有的，下面另说
                path = find_data(*names)
            print(f"{title}　{path}" + (f"　{path.stat().st_size:,} 字节" if path.is_file() else ""))
        except SystemExit:
            print(f"{title}　没有，要用时运行 python {command}")


if __name__ == "__main__":
    main()
