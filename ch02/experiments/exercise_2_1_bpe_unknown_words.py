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
import os
import sys
from pathlib import Path

import tiktoken

QUESTION = "Akwirw ier"


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


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def main():
    """编码、逐个解码、还原，再看合并的先后。"""
    parser = argparse.ArgumentParser(description="练习 2.1　BPE 遇到不认识的词")
    parser.add_argument("--text", default=QUESTION, help=f"要编码的文字（默认：{QUESTION}）")
    text = parser.parse_args().text
    if not text:
        parser.error("--text 是空的，请给一段文字")

    tokenizer = tiktoken.get_encoding("gpt2")
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
