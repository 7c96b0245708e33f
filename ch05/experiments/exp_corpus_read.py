"""第 5 章 · 实验　一个大文件，什么编码、坏在哪一行，怎样不整个读进内存就知道？

问题：　同一篇中文存成 UTF-8、GB18030、UTF-16，再压缩一遍，都认得出、读得对吗？几兆的文件里改坏一个字节，说得出在第几行吗？
先猜：　GB18030 的文件按 UTF-8 读会报错；反过来，坏了一个字节的 UTF-8 文件，按 GB18030 读会不会"成功"？（先想 10 秒，再运行）
看点：　① 六种存法，读出来一字不差；② 坏一个字节：先认准它是 UTF-8，再说是第几行第几个字节；猜成 GB18030 就会读出一篇乱码，还不报错；
        ③ 压缩包边读边解压：解压后的大小加倍，内存不跟着加倍；④ 长文章断成一篇篇文档，断在顶格的空行处，不断在函数中间。
动手改：1. 把 encoding_of 里的 0.5 改成 0.2：坏了一个字节的 UTF-8 文件被认成 GB18030，坏在哪里就说错了，第二条自查变成 ✗。
        2. 把 blocks 里 data.rfind(b"\\n") + 1 换成 len(data)：压缩包会从一个汉字的中间断开：好好的文件，报错说有坏字节。
        3. 把 cut_long 里的 (?=[^\\s)\\]}}]) 去掉：缩进的空行后面也断开，最后一条自查变成 ✗。

运行：
    python ch05/experiments/exp_corpus_read.py                      # 用自带的中文短篇
    python ch05/experiments/exp_corpus_read.py --text 我的文件.txt  # 自己的文件：什么编码，断成几篇
    约 3 秒，0.1 GB（2 核 CPU）；几万个文件一起读，见 exp_corpus_clean.py
"""

import argparse
import ast
import codecs
import gzip
import inspect
import json
import os
import re
import sys
import tempfile
import tracemalloc
import zlib
from collections import Counter
from pathlib import Path

# 改这里
BLOCK_BYTES = 1 << 20  # 一次最多读几个字节：内存里最多放两块
DOC_CHARS = 4000  # 一篇文档到了多长，就在下一个合适的地方断开
LONG_BYTES = 3_000_000  # 实验里的大文件约有几个字节
SUFFIXES = {".txt": "text", ".md": "text", ".py": "text", ".jsonl": "jsonl"}


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


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def opened(path):
    """打开来读字节，.gz 边读边解压。"""
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


def encoding_of(path):
    """看开头 1 MB，认出编码。

    参数:
        path (Path): 文件

    返回:
        str: utf-8、gb18030 或 utf-16 的一种

    异常:
        ValueError: 读不了，或是二进制文件
    """
    try:
        with opened(path) as file:
            head = file.read(1 << 20)
    except (OSError, EOFError, zlib.error):
        raise ValueError(f"读不了 {path}：没有权限、不是文件，或压缩包坏了；修好它，或挪走它") from None
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    for guess in ("utf-16-le", "utf-16-be") if 0 in head else ():  # 没有 BOM 的 UTF-16：照它读，几乎全是认得的字，那就是它
        letters = head.decode(guess, "replace")
        if len(re.findall(r"[\t\n\r -~\u3000-\u9fff\uff00-\uffef‘’“”…—]", letters)) > 0.9 * len(letters):
            return guess
    if 0 in head:
        raise ValueError(f"{path} 里有 0x00，是二进制文件，不是文本：挪走它，或转成文本")
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # 一段段地解码：开头 1 MB 切在一个字的中间，不算错
        return "utf-8"
    except UnicodeDecodeError:
        pass
    # 照 UTF-8 读不通，可能是 GB18030，也可能是坏了几处的 UTF-8。照 GB18030 读，几乎什么都读得通，
    # 所以要看读出来的是不是常用字：真的是它，简体 100%、繁体七成在 GB2312 里；UTF-8 读错成它，只有三成。
    letters = [letter for letter in head.decode("gb18030", "ignore") if letter > "\x7f"]
    return "gb18030" if sum(bool(letter.encode("gb2312", "ignore")) for letter in letters) > 0.5 * len(letters) else "utf-8"


def blocks(piece):
    """一段文件 → 一块块字节，都在行尾断开；.gz 和大文件都不会整个读进来（UTF-16 的除外）。

    参数:
        piece (dict): plan_jobs 给的一段

    返回:
        Iterator[tuple[int, bytes]]: 前面有几个换行；字节

    异常:
        ValueError: 压缩包坏了或没有传完，或有一行太长
    """
    path, left, lines, rest = Path(piece["path"]), piece["end"] - piece["start"], 0, b""
    whole = path.suffix != ".gz"
    try:
        with opened(path) as file:
            if piece["start"]:
                while (todo := piece["start"] - file.tell()) > 0:  # 数一数前面有几行：报错时要说第几行
                    lines += file.read(min(todo, 1 << 20)).count(b"\n")
            while data := file.read(left if whole else BLOCK_BYTES):
                last = whole or len(data) < BLOCK_BYTES
                data = rest + data
                cut = len(data) if last else data.rfind(b"\n") + 1
                if cut == 0:
                    raise ValueError(f"{path} 有一行长过 {BLOCK_BYTES:,} 个字节，切不开：先分成短一点的行")
                data, rest = data[:cut], data[cut:]
                yield lines, data
                lines += data.count(b"\n")
                if whole:
                    break
            if rest:
                yield lines, rest
    except (OSError, EOFError, zlib.error):
        raise ValueError(f"{path} 读到一半读不下去了：压缩包坏了、没有传完，或硬盘出错") from None


def decoded(piece, lines, data, skip_bad, stats):
    """一块字节 → 文字；坏字节说清在第几行，或者按读者的意思跳过那一行。

    参数:
        piece (dict): plan_jobs 给的一段
        lines (int): 前面有几个换行
        data (bytes): 字节
        skip_bad (bool): 坏的行跳过，不报错
        stats (Counter): 往里数坏了几行

    返回:
        str: 文字

    异常:
        ValueError: 有坏字节，又没有说要跳过
    """
    try:
        return data.decode(piece["encoding"]).removeprefix("\ufeff")  # 文件开头的 BOM：留着，JSON 读不了
    except UnicodeDecodeError as error:
        if not skip_bad or "16" in piece["encoding"]:
            line, column = lines + data.count(b"\n", 0, error.start) + 1, error.start - data.rfind(b"\n", 0, error.start)
            raise ValueError(f"{piece['path']} 第 {line} 行第 {column} 个字节是 0x{data[error.start]:02X}，不是 {piece['encoding'].upper()}：改好它，或加 --skip-bad 跳过坏的行") from None
    kept = []
    for line in data.splitlines(keepends=True):
        try:
            kept.append(line.decode(piece["encoding"]))
        except UnicodeDecodeError:
            stats["坏的行"] += 1
    return "".join(kept)


def clean(text):
    """换行一律是 \\n，去掉控制字符、行尾的空白、三个以上连着的空行；缩进不动，代码要靠它。

    参数:
        text (str): 读进来的文字

    返回:
        str: 清理过的
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f\ufeff]", "", text.replace("\f", "\n"))
    return re.sub(r"\n{4,}", "\n\n\n", re.sub(r"[ \t　]+\n", "\n", text)).strip("\n")


def cut_long(text):
    """太长的文本，够长了就在下一个"空行后面又顶格"的地方断开：代码断在函数之间，文章断在段落之间。

    参数:
        text (str): 清理过的文本

    返回:
        list[str]: 一篇篇文档，接起来还是原来的字（断开处的空行除外）
    """
    pieces, start = [], 0
    for place in re.finditer(r"\n\n+(?=[^\s)\]}])", text):
        if place.start() - start >= DOC_CHARS:
            pieces.append(text[start : place.start()])
            start = place.end()
    return [*pieces, text[start:]]


def prose(source):
    """一个 Python 文件里的英文说明：每个模块、类、函数的文档，只要成句的段落，不要参数表和例子。

    参数:
        source (str): 源码

    返回:
        str: 段落，空一行隔开
    """
    try:
        nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))]
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # 有的文件是模板，或是别的版本的语法
        return ""
    found = [re.sub(r"\s*\n\s*", " ", text) for node in nodes for text in re.split(r"\n\s*\n", inspect.cleandoc(ast.get_docstring(node, clean=False) or ""))]
    return "\n\n".join(text for text in found if len(text) > 60 and re.match(r"[A-Z][a-z]* [a-z]", text) and text.endswith(".") and not re.search(r">>>|::|  ", text))


def documents(piece, skip_bad, stats):
    """一段文件 → 一篇篇清理过的文档。

    参数:
        piece (dict): plan_jobs 给的一段
        skip_bad (bool): 坏的行跳过，不报错
        stats (Counter): 往里数坏了几行

    返回:
        Iterator[str]: 文档

    异常:
        ValueError: 读不了；说清哪个文件、第几行
    """
    for lines, data in blocks(piece):
        text = decoded(piece, lines, data, skip_bad, stats)
        if piece["kind"] == "verse":
            for poem in json.loads(text):
                if all(isinstance(line, str) for line in poem["lines"]):  # 有 5 首在下棋时被打乱成了一个个字，不要
                    rows = ["".join(pair) for pair in zip(poem["lines"][::2], poem["lines"][1::2])]  # 一联一行
                    yield clean("\n".join([f"{poem['title']}　{poem['author']}", *rows]))
        elif piece["kind"] == "jsonl":
            for number, line in enumerate(text.split("\n"), start=lines + 1):
                try:
                    entry = json.loads(line) if line.strip() else {"text": ""}
                    yield from cut_long(clean(entry["text"]))
                except (ValueError, TypeError, KeyError, AttributeError):
                    if not skip_bad:
                        raise ValueError(f"{piece['path']} 第 {number} 行不是 {{\"text\": \"…\"}} 这样的 JSON：改好它，或加 --skip-bad 跳过坏的行") from None
                    stats["坏的行"] += 1
        else:
            yield from cut_long(clean(prose(text) if piece["kind"] == "docstrings" else text))


# ---- 实验 ----


def whole(path):
    """整个文件算一段，编码现认。

    参数:
        path (Path): 文件

    返回:
        dict: 文件、读法、编码、从哪个字节到哪个字节
    """
    kind = SUFFIXES.get(Path(path.name.removesuffix(".gz")).suffix, "text")
    return {"path": str(path), "kind": kind, "encoding": encoding_of(path), "start": 0, "end": path.stat().st_size}


def complaint(path):
    """读一个坏文件，得到报错的那句话。

    参数:
        path (Path): 文件

    返回:
        str: 报错；没有报错就是空的
    """
    try:
        for _ in documents(whole(path), False, Counter()):
            pass
        return ""
    except ValueError as error:
        return str(error).replace(str(path), path.name)


def peak_megabytes(path):
    """读完一个文件，内存最多多占了多少。

    参数:
        path (Path): 文件

    返回:
        float: MB
    """
    tracemalloc.start()
    for _ in documents(whole(path), False, Counter()):
        pass
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return peak


def experiment(text, folder):
    """存成六种样子、弄坏几处、压缩，各读一遍。

    参数:
        text (str): 一篇中文
        folder (Path): 临时文件夹
    """
    text, same = clean(text), True
    print("一、同一篇文章，六种存法")
    for name, data in {
        "utf8.txt": text.encode(), "bom.txt": b"\xef\xbb\xbf" + text.encode(), "gbk.txt": text.encode("gb18030"),
        "utf16.txt": text.encode("utf-16"), "no_bom.txt": text.encode("utf-16-be"), "utf8.txt.gz": gzip.compress(text.encode()),
    }.items():  # fmt: skip
        (folder / name).write_bytes(data)
        found = list(documents(whole(folder / name), False, Counter()))
        equal = "".join("".join(found).split()) == "".join(text.split())
        same = same and equal
        print(f"  {name:12} {len(data):8,} 字节　认作 {encoding_of(folder / name):9}　{len(found)} 篇文档　{'一字不差' if equal else '读错了'}")

    print("\n二、弄坏")
    long = text * (LONG_BYTES // len(text.encode()) + 1)
    data, lines = bytearray(long.encode()), long.count("\n")
    place = long.encode().rindex("，".encode(), 0, len(data) // 4)  # 一个字的头一个字节
    data[place] = 0xFF
    (folder / "one_byte.txt").write_bytes(data)
    said = {"坏了一个字节": complaint(folder / "one_byte.txt")}
    (folder / "cut.txt.gz").write_bytes(gzip.compress(long.encode())[:-2000])
    (folder / "picture.txt").write_bytes(bytes(range(256)) * 40)
    (folder / "line.jsonl").write_text('{"text": "好"}\n{"text": 好}\n', encoding="utf-8")
    said |= {"没有传完的压缩包": complaint(folder / "cut.txt.gz"), "二进制文件": complaint(folder / "picture.txt"), "坏的 JSON": complaint(folder / "line.jsonl")}
    for name, sentence in said.items():
        print(f"  {name}　{sentence or '没有报错'}")
    wrong = bytes(data).decode("gb18030", "replace")[1000:1020]
    print(f"  （{lines:,} 行里坏了 1 个字节；要是当成 GB18030 读：{wrong!r}……）")

    print("\n三、压缩包，边读边解压")
    peaks = []
    for times in (4, 8):
        (folder / "big.txt.gz").write_bytes(gzip.compress((long * times).encode(), 1))
        peaks.append(peak_megabytes(folder / "big.txt.gz"))
        print(f"  解压后 {len(long.encode()) * times / 1e6:.0f} MB　读完内存最多多占 {peaks[-1]:.0f} MB")
    (folder / "sum.txt.gz").write_bytes(gzip.compress((long * 4).encode(), 1))
    pieces = list(documents(whole(folder / "sum.txt.gz"), False, Counter()))

    code = Path(__file__).read_text(encoding="utf-8")
    heads = [piece.split("\n")[0] for piece in cut_long(clean(code))]
    print(f"\n四、这个脚本自己断成 {len(heads)} 篇，各从这一行开始：")
    print("\n".join(f"  {head[:60]}" for head in heads[:6]))

    print("\n这个数字对吗？")
    confirm("六种存法，读出来一字不差", same, "编码认错了，或 BOM 没有去掉")
    line = bytes(data).count(b"\n", 0, place) + 1
    confirm(f"坏的字节在第 {line:,} 行，报错说的就是它", f"第 {line} 行" in said["坏了一个字节"] and "0xFF" in said["坏了一个字节"], "编码认错了，或数行数时没有加上前面的块")
    confirm("压缩包断成一块块读，一个字也没有少", "".join("".join(pieces).split()) == "".join((long * 4).split()), "从一行的中间断开了，或漏了最后一块")
    confirm(f"解压后的大小加倍，内存没有跟着加倍（{peaks[0]:.0f} → {peaks[1]:.0f} MB）", peaks[1] < 1.5 * peaks[0], "整个解压到了内存里")
    confirm("断开的地方都是顶格的行", all(head[:1].strip() for head in heads), "断在了缩进的行，也就是函数中间")


def main():
    """认编码，读文件，说清坏在哪里。"""
    parser = argparse.ArgumentParser(description="实验　一个大文件：什么编码，坏在哪一行")
    parser.add_argument("--text", type=Path, help="自己的文件（.txt、.md、.py、.jsonl 或它们的 .gz）：只说编码、断成几篇")
    parser.add_argument("--quick", action="store_true", help="与不加时一样：本来就很快")
    args = parser.parse_args()
    try:
        if args.text:
            piece = whole(args.text) if args.text.is_file() else parser.error(f"没有这个文件：{args.text}")
            found = list(documents(piece, False, Counter()))
            print(f"{args.text}　{piece['encoding']}　断成 {len(found)} 篇，共 {sum(map(len, found)):,} 个字符")
        else:
            with tempfile.TemporaryDirectory() as folder:
                experiment(read_text(find_data("story-zh.txt")), Path(folder))
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
