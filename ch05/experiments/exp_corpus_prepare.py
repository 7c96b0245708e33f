"""第 5 章 · 实验　一篇篇文档，怎样变成词元分片：去重、留出、学词表，断了接着做，一个字节也不差？

问题：　语料里有多少是重复的？换一份词表，一个词元平均装几个字节？半路被 kill -9，或者换成 4 个进程来做，分片还是同样的字节吗？
先猜：　清理、签名、切词元，一件件活互不相干；去重却要知道"前面出现过谁"。哪一步非得排队不可？（先想 10 秒，再运行）
看点：　① 几篇一模一样，几篇几乎一样（版权声明、照抄的代码最多）；② 先去重，再留出：次序反了，几乎一样的两篇会一篇在训练里、一篇在评估里；
        ③ 一个词元平均几个字节，--vocab gpt2 差多少；④ 摘要（SHA-256）写在 index.json 里，分片短了、坏了一位，训练时都查得出来。
动手改：1. 把 SIMILAR 改成 0.5：几乎一样的多删掉一些；再改成 1.0，几乎只删一模一样的。
        2. 把 pack 里的 [*encode(document), end] 换成 encode(document)：文档之间没有结束词元，第二、三条自查变成 ✗。
        3. --workers 1 和 --workers 4 各做一份（复制一份 docs 文件夹，--corpus 指过去），比一比两个 index.json：一个字节也不差。

运行：
    python ch05/experiments/exp_corpus_prepare.py                                            # 先运行 exp_corpus_clean.py
    python ch05/experiments/exp_corpus_prepare.py --corpus ch05/outputs/corpus_verse --vocab 6144
    python ch05/experiments/exp_corpus_prepare.py --quick
    约 5 秒，0.2 GB（2 核 CPU）；做好了用 exp_pretrain_corpus.py 训练
"""

import argparse
import functools
import hashlib
import heapq
import importlib.util
import json
import multiprocessing
import os
import re
import shutil
import sys
import threading
import unicodedata
import zlib
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from operator import add
from pathlib import Path

import numpy as np
import tiktoken
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
# 改这里
SIMILAR, PERMUTATIONS = 0.8, 64  # 杰卡德相似度（Jaccard similarity）到了多少算几乎一样；MinHash 签名有几个数
VOCAB_CHARS = 20_000_000  # 最多用多少个字符来学词表：再多，学到的合并也差不多
DEFAULTS = {"python": ("4096", 20), "docstrings": ("4096", 20), "verse": ("6144", 30), "stories": ("512", 150), "input": ("4096", 20)}  # 词表，千分之几留出
END = "<|endoftext|>"
GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # GPT-2 切片段的正则，详见 ch02 的两个 BPE 实验


# region 沿用 ch02/experiments/exp_bpe_from_scratch.py: VISIBLE, BYTE_OF_ID, ID_OF_BYTE
VISIBLE = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]


BYTE_OF_ID = bytes(VISIBLE + [byte for byte in range(256) if byte not in VISIBLE])


ID_OF_BYTE = bytes.maketrans(BYTE_OF_ID, bytes(range(256)))
# endregion


# region 沿用 ch02/experiments/exp_bpe_fast.py: ODD_NUMBERS, ODD, SPACE, PATTERN, PIECE, PIECE_EXACT, WORD, split_word, count_pieces, to_chars, learn_merges_fast
ODD_NUMBERS = "".join(char for char in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(char) in ("Nl", "No"))


ODD = frozenset(ODD_NUMBERS)


SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"


PATTERN = rf"'(?:[sdmt]|ll|ve|re)| ?[^\W\d_%s]+| ?[\d%s]+| ?(?:[^{SPACE}\w]|_)+|[{SPACE}]+(?![^{SPACE}])|[{SPACE}]+"


PIECE = re.compile(PATTERN % ("", ""))


PIECE_EXACT = re.compile(PATTERN % (ODD_NUMBERS, ODD_NUMBERS))


WORD = re.compile(rf" ?[^{SPACE}]+|[{SPACE}]+(?![^{SPACE}])|[{SPACE}]+")


def split_word(word):
    """一个词 → 片段，与 GPT-2 的切法相同。（详解见 ch02/experiments/exp_bpe_fast.py）"""
    return (PIECE if word.isascii() or ODD.isdisjoint(word) else PIECE_EXACT).findall(word)


def count_pieces(text):
    """数一数每种片段出现几次：先按空白粗切，再把不同的词细切，复杂的正则只要用在每个不同的词上一次。（详解见 ch02/experiments/exp_bpe_fast.py）"""
    pieces = Counter()
    for word, times in Counter(WORD.findall(text)).items():
        for piece in split_word(word):
            pieces[piece] += times
    return pieces


def to_chars(piece):
    """片段 → 字符串，每个字符的码位就是一个编号：于是"找一对、换掉"可以用 str.split 和 join，它们是 C 写的。（详解见 ch02/experiments/exp_bpe_fast.py）"""
    return piece.encode("utf-8").translate(ID_OF_BYTE).decode("latin-1")


def learn_merges_fast(pieces, num_merges, heap=True):
    """训练，结果与朴素版逐个相同：片段是字符串，最多的一对由堆给出。（详解见 ch02/experiments/exp_bpe_fast.py）"""
    words, times = [to_chars(piece) for piece in pieces], list(pieces.values())
    counts = defaultdict(int)
    where = defaultdict(list)
    for i, word in enumerate(words):
        for pair in map(add, word, word[1:]):
            counts[pair] += times[i]
            where[pair].append(i)
    queue = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(queue)
    merges = []
    while counts and len(merges) < num_merges:
        if heap:
            count, pair = heapq.heappop(queue)
            if counts.get(pair) != -count:
                continue
        else:
            pair = min(counts, key=lambda pair: (-counts[pair], pair))
        left, right = pair
        merges.append((ord(left), ord(right)))
        new = chr(255 + len(merges))
        delta = defaultdict(int)
        for i in set(where.pop(pair)):
            n = times[i]
            parts = words[i].split(pair)
            for j in range(len(parts) - 1):
                before, after = parts[j][-1:], parts[j + 1][:1]
                if before or j:
                    delta[(before or right) + left] -= n
                    fresh = (before or new) + new
                    delta[fresh] += n
                    where[fresh].append(i)
                if after:
                    delta[right + after] -= n
                    fresh = new + after
                    delta[fresh] += n
                    where[fresh].append(i)
            words[i] = new.join(parts)
        delta.pop(pair, None)
        del counts[pair]
        for pair, change in delta.items():
            counts[pair] += change
            if counts[pair] > 0:
                heapq.heappush(queue, (-counts[pair], pair))
            else:
                del counts[pair]
    return merges


# endregion


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


# region 沿用 ch05/experiments/exp_corpus_clean.py: atomic, rows_of, follow_parent, in_parallel, digest, start_or_resume
@contextmanager
def atomic(path, mode="w"):
    """写一个文件，要么完整，要么没有：写到临时文件，落盘，再改名。（详解见 ch05/experiments/exp_corpus_clean.py）"""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, mode, **({} if "b" in mode else {"encoding": "utf-8", "newline": "\n"})) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise OSError(f"写不进 {path}（磁盘满了，或没有写的权限）：腾出空间，再运行同一条命令，会接着做") from error
    finally:
        part.unlink(missing_ok=True)


def rows_of(folder, number):
    """读回一件活的文档，一次一行，不整个读进来。（详解见 ch05/experiments/exp_corpus_clean.py）"""
    with open(folder / f"docs_{number:05}.jsonl", encoding="utf-8") as file:
        yield from map(json.loads, file)


def follow_parent():
    """工作进程跟着主进程走：主进程被 kill -9 时没有机会通知它们，它们会一直等活，所以自己盯着。（详解见 ch05/experiments/exp_corpus_clean.py）"""
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()


def in_parallel(job, cases, workers, title):
    """几个进程一起做许多件活；只有一个进程时就在这里做。（详解见 ch05/experiments/exp_corpus_clean.py）"""
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
            pool.shutdown(cancel_futures=True)
            raise


def digest(path):
    """一个文件的 SHA-256，一段段地读。（详解见 ch05/experiments/exp_corpus_clean.py）"""
    result = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            result.update(data)
    return result.hexdigest()


def start_or_resume(work, today, made):
    """上次的输入、参数与这次的相同，就接着做；不同，就从头来。（详解见 ch05/experiments/exp_corpus_clean.py）"""
    plan = work / "plan.json"
    if plan.exists() and json.loads(plan.read_text(encoding="utf-8")) == today:
        print(f"接着做　{work}")
        for path in [*work.glob("*.part"), *work.parent.glob("*.part")]:
            path.unlink(missing_ok=True)
        return
    for path in made:
        path.unlink()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    with atomic(plan) as file:
        json.dump(today, file)


# endregion


def quick_docs(docs):
    """没有清理过的文档也能走完流程：自带的两个短篇，一段一篇。正经的做法见 exp_corpus_clean.py。

    参数:
        docs (Path): 写到哪个文件夹
    """
    docs.mkdir(parents=True, exist_ok=True)
    pieces = [piece for name in ("story-en.txt", "story-zh.txt") for piece in read_text(find_data(name)).split("\n\n") if len(piece) > 40]
    rows = [{"hash": hashlib.sha256(piece.encode()).hexdigest()[:32], "text": piece} for piece in pieces]
    (docs / "docs_00000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    index = {"about": {"source": "stories"}, "stats": {"文档": len(rows)}, "docs": {"docs_00000.jsonl": digest(docs / "docs_00000.jsonl")}}
    (docs / "index.json").write_text(json.dumps(index), encoding="utf-8")


# ---- 第一步：签名（几个进程一起做）----


def new_sketch():
    """一个空的 MinHash；datasketch 没有装也能运行，所以到要用时才导入。

    返回:
        MinHash: 还没有放进片段
    """
    from datasketch import MinHash

    return MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=zlib.crc32)


def signature(text):
    """MinHash 签名：相同的数占几成，就约有几成的片段相同。片段是连着的 5 个词或汉字；怎样算的，见 ch07 的 exp_near_duplicates.py。

    参数:
        text (str): 文档

    返回:
        list[int]: PERMUTATIONS 个数
    """
    words = re.findall(r"[㐀-鿿]|[^\W㐀-鿿]+", text.lower())
    grams = {" ".join(words[i : i + 5]).encode() for i in range(max(1, len(words) - 4))}
    sketch = new_sketch()
    sketch.update_batch(sorted(grams))
    return sketch.hashvalues.tolist()


def sign_job(number, docs, work):
    """做一件活：写出 signs_编号.npy，一行是一篇文档的签名；做过的不再做。

    参数:
        number (int): 第几件
        docs (Path): 文档的文件夹
        work (Path): 写到哪里
    """
    path = work / f"signs_{number:05}.npy"
    if not path.exists():
        signs = np.array([signature(row["text"]) for row in rows_of(docs, number) if "text" in row], np.uint32)  # (n, PERMUTATIONS)
        with atomic(path, "wb") as file:
            np.save(file, signs)


# ---- 第二步：去重、留出（排队做：要知道前面出现过谁）----


def choose(docs, work, count, near, permille):
    """哪些文档留下，哪些留出来评估。先去重，再留出。

    参数:
        docs (Path): 文档的文件夹
        work (Path): 签名在哪里
        count (int): 有几件活
        near (bool): 找不找几乎一样的
        permille (int): 千分之几留出来

    返回:
        tuple: 每件活一个字符串，每篇一个字母：t 训练，v 留出，x 不要；几项计数

    异常:
        ValueError: 训练的、留出的，有一样一篇也没有
    """
    stats, seen, kept, fates = Counter(), set(), {}, []
    if near:
        from datasketch import MinHashLSH

        # 桶的门槛放低一些：门槛附近的对，LSH 只有一半找得到，宁可多找几个来估。桶和签名都在内存里，一篇约 5 KB，一百万篇 5 GB。
        lsh = MinHashLSH(threshold=0.8 * SIMILAR, num_perm=PERMUTATIONS)
    for number in tqdm(range(count), desc="去重", leave=False, disable=None):
        fate, signs = "", np.load(work / f"signs_{number:05}.npy") if near else []
        for i, mark in enumerate(row["hash"] for row in rows_of(docs, number) if "hash" in row):
            duplicate = "一模一样的" if mark in seen else ""
            seen.add(mark)
            if near and not duplicate:
                sketch = new_sketch()
                sketch.hashvalues = signs[i].astype(sketch.hashvalues.dtype)
                # LSH 只找可能像的，找来的再用签名估一估：真到了 SIMILAR 才算。
                if any(kept[other].jaccard(sketch) >= SIMILAR for other in lsh.query(sketch)):
                    duplicate = "几乎一样的"
                else:
                    kept[mark] = sketch
                    lsh.insert(mark, sketch)
            # 留不留出由内容的摘要决定，不抽签：再来一次、换一台机器、多几篇别的文档，留出的还是这几篇。
            fate += "x" if duplicate else "v" if int(mark[:8], 16) % 1000 < permille else "t"
            stats.update([duplicate or {"v": "留出的", "t": "训练的"}[fate[-1]]])
        fates.append(fate)
    if not stats["训练的"] or not stats["留出的"]:
        raise ValueError(f"去重之后，训练的文档 {stats['训练的']} 篇，留出的 {stats['留出的']} 篇，都不能是 0：多给一些文本，或改 --held-out")
    return fates, stats


# ---- 第三步：词表 ----


def texts_of(docs, number, fate, letter):
    """一件活里的某一类文档（t 训练，v 留出）。"""
    return (row["text"] for row, kind in zip(rows_of(docs, number), fate) if kind == letter)


def train_vocab(docs, fates, size):
    """在训练的文档上学一份字节级 BPE（byte pair encoding）的词表；留出的文档一个字也不看。

    参数:
        docs (Path): 文档的文件夹
        fates (list[str]): choose 的结果
        size (int): 词表大小：256 个字节、合并、1 个结束词元

    返回:
        list[tuple[int, int]]: 依次合并的对
    """
    pieces, used = Counter(), 0
    for number, fate in enumerate(fates):
        for text in texts_of(docs, number, fate, "t"):
            pieces.update(count_pieces(text))
            used += len(text)
        if used > VOCAB_CHARS:
            break
    return learn_merges_fast(pieces, size - 257)


def load_vocab(path):
    """词表文件 → 分词器：合并是自己学的，编码交给 tiktoken，它是 Rust 写的。

    参数:
        path (Path): vocab.json

    返回:
        tiktoken.Encoding: 分词器；结束词元的编号是 eot_token

    异常:
        ValueError: 文件坏了
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content == "gpt2":
            return tiktoken.get_encoding("gpt2")
        tokens = [bytes([byte]) for byte in BYTE_OF_ID]
        for left, right in content:
            tokens.append(tokens[left] + tokens[right])
        ranks = {}
        for i, token in enumerate(tokens):
            ranks.setdefault(token, i)  # 两条路拼成同样的字节时，用先学到的那个编号
        return tiktoken.Encoding("corpus", pat_str=GPT2_SPLIT, mergeable_ranks=ranks, special_tokens={END: len(tokens)})
    except (OSError, ValueError, TypeError, IndexError):
        raise ValueError(f"{path} 不见了，或者坏了：删掉这个文件夹，重新运行 exp_corpus_prepare.py") from None


# ---- 第四步：切成词元，写分片（几个进程一起做）----


def pack(documents, encode, end):
    """文档首尾相接，拼成一长串词元：每篇后面放一个结束词元，模型才知道从这里起是另一篇。

    参数:
        documents (Iterable[str]): 文档
        encode (callable): 文本 → 编号
        end (int): 结束词元的编号

    返回:
        np.ndarray: 编号，小端的 uint16（<u2），每个 2 字节

    异常:
        ValueError: 编号超出 uint16，写进去会变成别的数
    """
    if end >= 2**16:
        raise ValueError(f"编号 {end} 超出了 uint16 能表示的 65535，词表太大")
    return np.array([i for document in documents for i in [*encode(document), end]], dtype="<u2")


def tokenize_job(number, fate, folder):
    """做一件活：写出训练的、留出的各一个分片；写好的不再写。

    参数:
        number (int): 第几件
        fate (str): choose 的结果里的这一件
        folder (Path): 语料的文件夹
    """
    vocab = _cached_vocab(folder / "vocab.json")
    for split, letter in (("train", "t"), ("val", "v")):
        path = folder / f"{split}_{number:05}.bin"
        if letter in fate and not path.exists():
            ids = pack(texts_of(folder / "docs", number, fate, letter), vocab.encode_ordinary, vocab.eot_token)
            with atomic(path, "wb") as file:
                file.write(ids.tobytes())


_cached_vocab = functools.lru_cache(load_vocab)  # 一个进程只读一次词表


# ---- 全程 ----


def write_once(path, make):
    """文件还没有，就算出来写好；已经有了，就读回来。断了再来，做过的步骤不用重做。

    参数:
        path (Path): JSON 文件
        make (callable): 没有参数，算出内容

    返回:
        object: 内容
    """
    if not path.exists():
        content = make()
        with atomic(path) as file:
            json.dump(content, file, ensure_ascii=False)
    return json.loads(path.read_text(encoding="utf-8"))


def prepare(args):
    """从文档到分片；断了再运行，接着做。

    参数:
        args (argparse.Namespace): 命令行参数，见 main

    返回:
        dict: index.json 的内容

    异常:
        ValueError: 没有文档，文档坏了，参数有问题，或已经有另一份分片
        OSError: 写不了文件
    """
    folder, docs, work = args.corpus, args.corpus / "docs", args.corpus / "work"
    try:
        listed = json.loads((docs / "index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ValueError(f"{docs} 里没有做好的文档：先运行 python ch05/experiments/exp_corpus_clean.py（--out {folder}）") from None
    for name, sha256 in listed["docs"].items():
        if not (docs / name).is_file() or digest(docs / name) != sha256:
            raise ValueError(f"{docs / name} 不见了，或者坏了（摘要对不上）：删掉 {docs}，重新运行 exp_corpus_clean.py")
    size, permille = DEFAULTS[listed["about"]["source"]]
    size, permille, near = args.vocab or size, args.held_out or permille, importlib.util.find_spec("datasketch") is not None
    if not near:
        print("没有装 datasketch，只删一模一样的：想连几乎一样的也删，pip install -r setup/requirements-data.txt")
    about = {"vocab": size, "held_out": permille, "near": near, "similar": SIMILAR, "docs": hashlib.sha256(json.dumps(listed["docs"]).encode()).hexdigest()}
    if (folder / "index.json").exists():
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        if index["about"] != about:
            raise ValueError(f"{folder} 里已经有另一份分片（文档或参数不同）：换个文件夹，或先删掉里面的 index.json 和 *.bin")
        shutil.rmtree(work, ignore_errors=True)
        print(f"已经做好了　{folder}")
        return index
    start_or_resume(work, about, [path for path in [*folder.glob("*_*.bin"), folder / "vocab.json"] if path.exists()])
    count = len(listed["docs"])
    if near:
        in_parallel(sign_job, [(number, docs, work) for number in range(count)], args.workers, "签名")
    fates, stats = write_once(work / "fates.json", lambda: choose(docs, work, count, near, permille))
    print(f"① 文档 {listed['stats']['文档']:,} 篇　" + "　".join(f"{name} {stats.get(name, 0):,}" for name in ("一模一样的", "几乎一样的", "训练的", "留出的")), flush=True)
    write_once(folder / "vocab.json", lambda: "gpt2" if size == "gpt2" else train_vocab(docs, fates, int(size)))
    vocab = load_vocab(folder / "vocab.json")
    print(f"② 词表 {vocab.n_vocab} 个词元" + ("" if size == "gpt2" else f"，最长的几个：{'　'.join(repr(text) for text in sorted((vocab.decode([i]) for i in range(256, vocab.eot_token)), key=lambda text: len(text.strip()))[-6:])}"), flush=True)
    in_parallel(tokenize_job, [(number, fate, folder) for number, fate in enumerate(fates)], args.workers, "切词元")
    shards = {path.name: {"tokens": path.stat().st_size // 2, "sha256": digest(path)} for path in sorted(folder.glob("*_*.bin"))}
    index = {"about": about, "end": vocab.eot_token, "vocab_size": vocab.n_vocab, "vocab_sha256": digest(folder / "vocab.json"), "stats": stats, "shards": shards}
    with atomic(folder / "index.json") as file:  # 目录最后写：它在，就说明别的都写完了
        json.dump(index, file, ensure_ascii=False, indent=1)
    shutil.rmtree(work, ignore_errors=True)
    return index


def check(folder, index):
    """自查：分片、目录、词表对得上。

    参数:
        folder (Path): 语料的文件夹
        index (dict): 目录
    """
    vocab = load_vocab(folder / "vocab.json")
    total = {split: sum(shard["tokens"] for name, shard in index["shards"].items() if name.startswith(split)) for split in ("train", "val")}
    name = next(iter(index["shards"]))
    ids = np.fromfile(folder / name, "<u2")[:200_000]
    texts = vocab.decode(ids.tolist()).split(END)[:-1]  # 最后一篇可能没取完
    rate = len("".join(texts).encode()) / max(1, (np.flatnonzero(ids == index["end"])[len(texts) - 1] + 1 if texts else 0))
    print(f"④ 训练 {total['train']:,} 个词元，留出 {total['val']:,} 个，共 {len(index['shards'])} 个分片；一个词元平均 {rate:.2f} 个字节　{folder}")
    print(f"\n  {texts[0][:200] if texts else ''!r}\n")
    print("这个数字对吗？")
    confirm("每个分片的摘要都与 index.json 里的相同", all(digest(folder / name) == shard["sha256"] for name, shard in index["shards"].items()), "复制时截断了，或硬盘坏了")
    again = pack(texts, vocab.encode_ordinary, index["end"])
    confirm(f"头一个分片解回 {len(texts)} 篇文字，再切一次，编号相同", np.array_equal(again, ids[: len(again)]), "词表不是切它的那一份，或文档不是按 UTF-8 读的")
    ends = sum(int((np.fromfile(folder / name, "<u2") == index["end"]).sum()) for name in index["shards"])
    confirm(f"每篇文档后面都有一个结束词元（{ends:,} 个）", ends == index["stats"]["训练的"] + index["stats"]["留出的"], "pack 里漏了结束词元")
    confirm("没有留下没写完的文件", not [*folder.glob("*.part"), *folder.glob("work")], "临时文件没有改名，或没有删掉")


def main():
    """文档 → 分片。"""
    parser = argparse.ArgumentParser(description="实验　一篇篇文档 → 词元分片")
    parser.add_argument("--corpus", type=Path, help="exp_corpus_clean.py 写的文件夹，分片也写在这里（默认：ch05/outputs/corpus_python）")
    parser.add_argument("--vocab", help="gpt2，或自己学的词表大小，300 到 65000（默认：随来源，512 到 6144）")
    parser.add_argument("--held-out", type=int, help="千分之几的文档留出来评估，1 到 500（默认：随来源，20 到 150）")
    parser.add_argument("--workers", type=int, default=min(os.cpu_count(), 8), help="几个进程（默认：核的个数，最多 8）")
    parser.add_argument("--quick", action="store_true", help="只用自带的短篇：看流程，不下结论")
    args = parser.parse_args()
    args.corpus = args.corpus or OUTPUTS / ("corpus_quick" if args.quick else "corpus_python")
    try:
        if args.vocab and args.vocab != "gpt2" and not (args.vocab.isdigit() and 300 <= int(args.vocab) <= 65000):
            raise ValueError(f"--vocab 要 gpt2，或 300 到 65000 的数，不能是 {args.vocab}")
        if args.held_out is not None and not 1 <= args.held_out <= 500 or args.workers < 1:
            raise ValueError(f"--held-out 应在 1 到 500 之间，--workers 至少是 1；得到的是 {args.held_out} 和 {args.workers}")
        if args.quick and not (args.corpus / "docs" / "index.json").exists():
            quick_docs(args.corpus / "docs")
        args.workers = 1 if args.quick else args.workers
        check(args.corpus, prepare(args))
    except KeyboardInterrupt:
        print("\n停下了。再运行同一条命令，会接着做")
        sys.exit(130)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
