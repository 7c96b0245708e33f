"""第 7 章 · 实验　几乎一样的题：怎样找出来，找出来的真是同一道吗？

问题：　一千多条指令里，哪些几乎一样？两两去比，条数翻十倍，要比的就翻一百倍；有没有不必两两比的办法，会漏掉多少？
先猜：　"12 和 5 哪个大"与"12 和 7 哪个大"，只差一个字；同一道题换个问法，字面全不同。按字面找出来的"重复"，几成真是同一道题？（先想 10 秒，再运行）
看点：　① 表：门槛从 0.95 放到 0.6，找到的越来越多，其中真是同一道题的占几成，同一道题又找到了几成；
        ② 一串一串：甲像乙，乙像丙，甲不像丙；按"像"连起来，一组能有多大；③ 左图：MinHash 猜的相似度有多准，错多少由签名的长短定；
        ④ 中图：LSH 找得到的机会，是一条 S 形的曲线，与公式重合吗；右图：条数多了，谁先慢下来。
动手改：1. PERMUTATIONS 从 128 改成 16：签名短，猜得不准，左图散开，误差该是原来的几倍？（√8 ≈ 2.8）
        2. 把 tfidf 里的 counts * idf 换成 counts：不管稀罕不稀罕，到处都有的字和稀罕的字一样重，门槛 0.9 找到的多了还是少了？
        3. 把 normalize 里的 text.lower() 换成 text：种下的几种改动里，哪一种找不到了？

运行：
    python ch07/experiments/exp_near_duplicates.py                         # 先 pip install -r setup/requirements-data.txt；图片写到 ch07/outputs/
    python ch07/experiments/exp_near_duplicates.py --file 我的.json        # 看自己的指令数据
    python ch07/experiments/exp_near_duplicates.py --file 我的.json --out 干净的.json    # 每组只留第一条，写到新文件
    python ch07/experiments/exp_near_duplicates.py --quick                 # 只用 200 条，看流程，不下结论
    约 20 秒，0.8 GB（2 核 CPU）

形状记号：n 条数　w 片段的种类
"""

import argparse
import json
import math
import os
import random
import re
import statistics
import sys
import time
import urllib.request
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
# 改这里
GRAM = 3  # 几个字符一个片段
THRESHOLDS = (0.95, 0.9, 0.8, 0.7, 0.6)  # 多像才算"几乎一样"；书上的工具用 0.9
PERMUTATIONS = 128  # MinHash 的签名有几个数
LSH_THRESHOLD = 0.7  # LSH 把签名切成几段，由它定：曲线在它附近陡起来
SIZES = (500, 1000, 2000, 4000, 8000)  # 条数从少到多，量用时


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


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


# region 沿用 ch07/main: download_and_load_file
def download_and_load_file(file_path, url):
    """读指令数据；file_path 不存在，就先从 url 下载。（详解见 ch07/main/example_01_dataset_and_prompt.py）"""
    if not os.path.exists(file_path):
        with urllib.request.urlopen(url, timeout=30) as response:
            text_data = response.read().decode("utf-8")
        with open(file_path, "w", encoding="utf-8") as file:
            file.write(text_data)
    advice = f"；全部问题和转换的办法：python setup/check_data.py {file_path}"
    try:
        with open(file_path, encoding="utf-8-sig") as file:
            data = json.load(file)
    except (ValueError, RecursionError) as error:
        place = f"（第 {error.lineno} 行第 {error.colno} 个字符）" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f"{file_path} 不是 UTF-8 编码的 JSON{place}{advice}") from None
    if not isinstance(data, list) or not data:
        raise ValueError(f"{file_path} 里应是一个列表，至少一条{advice}")
    for number, entry in enumerate(data, start=1):
        texts = [entry.get(key) for key in ("instruction", "input", "output")] if isinstance(entry, dict) else [None]
        if not all(isinstance(text, str) and "<|endoftext|>" not in text for text in texts) or not texts[0].strip():
            wanted = "instruction（不能是空的）、input、output 三段文字，不含 <|endoftext|>"
            raise ValueError(f"{file_path} 的第 {number} 条应有 {wanted}{advice}")
        whole = json.dumps(entry, ensure_ascii=False)
        if whole.encode("utf-8", "ignore").decode("utf-8") != whole:
            raise ValueError(f"{file_path} 的第 {number} 条有半个表情符号（孤立的代理项）{advice}")
    return data


# endregion


def normalize(text):
    """大小写、标点、空白的不同，不算不同。

    参数:
        text (str): 文字

    返回:
        str: 小写，字与字之间一个空格；中文、数字都留着
    """
    return " ".join(re.findall(r"\w+", text.lower()))


def shingles(text):
    """一段文字有哪些片段（shingle）：挨着的 GRAM 个字符；太短的，整段是一个。

    参数:
        text (str): normalize 过的文字

    返回:
        set[str]: 片段
    """
    return {text[i : i + GRAM] for i in range(max(1, len(text) - GRAM + 1))}


def tfidf(texts):
    """TF-IDF 向量：每个片段出现几次，乘它有多稀罕，再缩放到长度 1；两条的点积就是余弦相似度（cosine similarity）。

    参数:
        texts (list[str]): normalize 过的文字

    返回:
        Tensor: (n, w)
    """
    columns = {gram: i for i, gram in enumerate(sorted(set().union(*map(shingles, texts))))}
    counts = torch.zeros(len(texts), len(columns))  # (n, w)
    for row, text in enumerate(texts):
        for i in range(max(1, len(text) - GRAM + 1)):
            counts[row, columns[text[i : i + GRAM]]] += 1
    # 稀罕的片段重：条数 ÷ 有它的条数，取对数；都加 1，处处都有的也留一点。
    idf = torch.log((1 + len(texts)) / (1 + (counts > 0).sum(dim=0))) + 1  # (w,)
    return nn.functional.normalize(counts * idf, dim=1)  # (n, w)


def similar_pairs(similarity, threshold):
    """相似度不小于门槛的每一对。

    参数:
        similarity (Tensor): 两两的相似度，(n, n)
        threshold (float): 门槛

    返回:
        set[tuple]: 每项是 (i, j)，i < j
    """
    return set(map(tuple, (similarity.triu(diagonal=1) >= threshold).nonzero().tolist()))


def jaccard(one, other):
    """两个集合的杰卡德相似度（Jaccard similarity）：共有的 ÷ 合起来的。

    参数:
        one, other (set): 两个集合，不会都是空的

    返回:
        float: 0 到 1
    """
    return len(one & other) / len(one | other)


def minhash(sets, seed):
    """MinHash 签名。把所有片段随机排一个次序，记下集合里排在最前面的是谁；两个集合记下的相同的机会，正好是杰卡德相似度。排 PERMUTATIONS 次。

    参数:
        sets (list[set]): 每条的片段
        seed (int): 随机的次序

    返回:
        list[MinHash]: datasketch 的签名
    """
    from datasketch import MinHash

    return MinHash.bulk([[gram.encode() for gram in each] for each in sets], num_perm=PERMUTATIONS, seed=seed)


def lsh_pairs(signatures):
    """LSH（locality-sensitive hashing）：签名切成几段，有一段完全相同的，放进同一个桶；只比同一个桶里的，不必两两都比。

    参数:
        signatures (list[MinHash]): minhash 的结果

    返回:
        tuple: 候选的对，set[tuple]，i < j；几段；一段几个数
    """
    from datasketch import MinHashLSH

    lsh, pairs = MinHashLSH(threshold=LSH_THRESHOLD, num_perm=PERMUTATIONS), set()
    for i, signature in enumerate(signatures):
        pairs.update((j, i) for j in lsh.query(signature))  # 先查再放：只与前面的比，不会与自己比
        lsh.insert(i, signature)
    return pairs, lsh.b, lsh.r


def groups(pairs, count):
    """把"像"连起来：甲像乙、乙像丙，就是一组。

    参数:
        pairs (set[tuple]): 哪些对像
        count (int): 一共几条

    返回:
        list[list[int]]: 两条以上的组，大的在前
    """
    leader = list(range(count))

    def find(i):  # 顺着找到这一组的头
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    for i, j in pairs:
        leader[max(find(i), find(j))] = min(find(i), find(j))
    found = {}
    for i in range(count):
        found.setdefault(find(i), []).append(i)
    return sorted((group for group in found.values() if len(group) > 1), key=len, reverse=True)


CHANGES = {  # 种下的改动：名字 → 怎样改
    "大小写、标点": lambda words, rng: " ".join(words).upper().replace(" ", " , "),
    "错一个字母": lambda words, rng: (lambda text, i: text[:i] + "x" + text[i + 1 :])(" ".join(words), rng.randrange(len(" ".join(words)))),
    "少一个词": lambda words, rng: (lambda gone: " ".join(words[:gone] + words[gone + 1 :]))(rng.randrange(len(words))),
    "词的次序打乱": lambda words, rng: " ".join(rng.sample(words, len(words))),
}


def planted_recall(texts, seed, count):
    """种下答案已知的重复：抽几条，各改一点点，看几种办法各找到几成。

    参数:
        texts (list[str]): 原来的文字
        seed (int): 抽哪几条，怎样改
        count (int): 每种改动种几条

    返回:
        dict: 改动 → 三个比例：余弦 ≥ 0.9 找到的、杰卡德 ≥ LSH_THRESHOLD 的、LSH 找到的
    """
    rng, result = random.Random(seed), {}
    for name, change in CHANGES.items():
        chosen = rng.sample([i for i, text in enumerate(texts) if len(text.split()) > 4], count)
        both = [normalize(text) for text in [texts[i] for i in chosen] + [change(texts[i].split(), rng) for i in chosen]]
        sets, vectors = [shingles(text) for text in both], tfidf(both)
        candidates, _, _ = lsh_pairs(minhash(sets, seed + 1))
        pairs = [(i, i + count) for i in range(count)]
        hits = [[(vectors[i] @ vectors[j]).item() >= 0.9 for i, j in pairs], [jaccard(sets[i], sets[j]) >= LSH_THRESHOLD for i, j in pairs], [pair in candidates for pair in pairs]]
        result[name] = [statistics.mean(each) for each in hits]
    return result


def seconds_by_size(texts, sizes):
    """条数从少到多，两两都比与 LSH 各用几秒；不够的，打乱词序凑。

    参数:
        texts (list[str]): 文字
        sizes (list[int]): 各种条数

    返回:
        list[tuple]: 每项是条数、两两比的秒数、LSH 的秒数（签名也算在内）
    """
    rng, rows = random.Random(0), []
    many = [normalize(text) for text in texts]
    while len(many) < max(sizes):
        words = rng.choice(texts).split() + rng.choice(texts).split()
        many.append(normalize(" ".join(rng.sample(words, len(words)))))
    for size in tqdm(sizes, desc="量用时", leave=False, disable=None):
        sets, start = [shingles(text) for text in many[:size]], time.perf_counter()
        for i in range(min(size, 200)):  # 一行一行地比，量 200 行，按行数放大：8,000 条全比要几分钟
            for j in range(size):
                jaccard(sets[i], sets[j])
        slow = (time.perf_counter() - start) * size / min(size, 200) / 2  # 每一对只要比一次
        start = time.perf_counter()
        lsh_pairs(minhash(sets, 1))
        rows.append((size, slow, time.perf_counter() - start))
    return rows


def thresholds_table(title, entries, similarity):
    """门槛放宽，找到几对，真是同一道题的几成。

    参数:
        title (str): 数据的名字
        entries (list[dict]): 指令数据；自带的有 rule 和 item，都相同就是同一道题的不同问法
        similarity (Tensor): 余弦相似度，(n, n)
    """
    known = all("rule" in entry and "item" in entry for entry in entries)
    same = {}
    for i, entry in enumerate(entries):
        same.setdefault((entry.get("rule"), entry.get("item")), []).append(i)
    truth = {(i, j) for each in same.values() for i in each for j in each if i < j} if known else set()
    print(f"\n{title}　{len(entries)} 条" + (f"；同一道题的不同问法 {len(truth):,} 对" if known else ""))
    print("门槛　找到几对" + ("　真是同一道题的　同一道题找到了" if known else "") + "　几组　最大的一组")
    for threshold in THRESHOLDS:
        pairs = similar_pairs(similarity, threshold)
        joined, right = groups(pairs, len(entries)), len(pairs & truth)
        line = f"{threshold:.2f}　{len(pairs):8,}"
        if known:
            line += f"　{right / len(pairs):14.0%}　{right / max(1, len(truth)):14.1%}" if pairs else "　" + " " * 13 + "—　" + " " * 13 + "—"
        print(line + f"　{len(joined):4}　{len(joined[0]) if joined else 0:6} 条")
    if known:
        found = [pair for pair in similar_pairs(similarity, 0.9) if pair not in truth]
        for i, j in sorted(found, key=lambda pair: -similarity[pair].item())[:2]:
            print(f"  像（{similarity[i, j].item():.2f}），却不是同一道：{one_line(entries[i])}　／　{one_line(entries[j])}")
        missed = min(truth, key=lambda pair: (similarity[pair].item(), pair)) if truth else None
        if missed:
            print(f"  是同一道，却不像（{similarity[missed].item():.2f}）：{one_line(entries[missed[0]])}　／　{one_line(entries[missed[1]])}")
    else:
        for i, j in sorted(similar_pairs(similarity, 0.9), key=lambda pair: (-similarity[pair].item(), pair))[:4]:
            print(f"  {similarity[i, j].item():.2f}　{one_line(entries[i])}　／　{one_line(entries[j])}")


def one_line(entry):
    """题目，一行。

    参数:
        entry (dict): 一条指令

    返回:
        str: 题目和输入，最多 60 个字符
    """
    return " ".join(f"{entry['instruction']} {entry['input']}".split())[:60]


def cosine(texts):
    """两两的余弦相似度。

    参数:
        texts (list[str]): 文字

    返回:
        Tensor: (n, n)
    """
    vectors = tfidf([normalize(text) for text in texts])  # (n, w)
    return vectors @ vectors.T  # (n, n)


def draw(guesses, curve, seconds, bands, path):
    """左：MinHash 猜的相似度；中：LSH 找得到的机会；右：用时随条数。

    参数:
        guesses (list[tuple]): 真的、猜的相似度
        curve (list[tuple]): 相似度、找到的比例、有几对
        seconds (list[tuple]): seconds_by_size 的结果
        bands (tuple): LSH 的几段、一段几个数
        path (Path): 存到哪里
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    left.scatter(*zip(*guesses), s=6, alpha=0.5, zorder=3)
    x = torch.linspace(0, 1, 101)  # (101,)
    noise = 2 * (x * (1 - x) / PERMUTATIONS).sqrt()  # 两个标准差；(101,)
    left.fill_between(x, x - noise, x + noise, color="0.85", label="公式：相似度 ± 2 个标准差")
    left.set(title=f"签名 {PERMUTATIONS} 个数，猜得多准", xlabel="真的杰卡德相似度", ylabel="MinHash 猜的")
    left.legend()
    b, r = bands
    middle.plot(x, 1 - (1 - x**r) ** b, color="0.5", label=f"公式：1 − (1 − s^{r})^{b}")
    middle.scatter([s for s, _, _ in curve], [found for _, found, _ in curve], s=[8 + 12 * math.log10(count) for _, _, count in curve], color="C1", zorder=3, label="量到的（点大的，对数多）")
    middle.axvline(LSH_THRESHOLD, color="0.8", linestyle="--")
    middle.set(title=f"切成 {b} 段，每段 {r} 个数，找得到的机会", xlabel="真的杰卡德相似度", ylabel="是候选的比例")
    middle.legend()
    sizes = [size for size, _, _ in seconds]
    right.loglog(sizes, [slow for _, slow, _ in seconds], "o-", label="两两都比（照 200 行放大）")
    right.loglog(sizes, [fast for _, _, fast in seconds], "o-", label="MinHash + LSH")
    right.set(title="用时随条数", xlabel="条数", ylabel="秒")
    right.set_xticks(sizes, [f"{size:,}" for size in sizes])
    right.minorticks_off()
    right.legend()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def compare(entries, quick):
    """MinHash、LSH 与两两都比：猜得多准，漏多少，快多少。

    参数:
        entries (list[dict]): 指令数据
        quick (bool): 少量几条，不下结论
    """
    texts = [f"{entry['instruction']} {entry['input']}" for entry in entries]
    seeds = range(1, 4 if quick else 6)
    recalls = [planted_recall(texts, seed, 20 if quick else 60) for seed in seeds]
    print(f"\n种下的重复，几种办法各找到几成（{len(recalls)} 次的平均）")
    print(f"怎样改的　　　　余弦 ≥ 0.9　杰卡德 ≥ {LSH_THRESHOLD}　LSH")
    for name in CHANGES:
        cosine_found, close, lsh_found = (statistics.mean(column) for column in zip(*[recall[name] for recall in recalls]))
        print(name + " " * (16 - len(name.encode("gbk"))) + f"{cosine_found:10.0%}　{close:12.0%}　{lsh_found:4.0%}")
    sets, tried, guesses, curve = [shingles(normalize(text)) for text in texts], random.Random(0), [], {}
    pairs = [(i, j) for i in range(len(sets)) for j in range(i)]
    truth = {pair: jaccard(sets[pair[0]], sets[pair[1]]) for pair in (tried.sample(pairs, 60_000) if len(pairs) > 60_000 else pairs)}
    for seed in seeds:
        signatures = minhash(sets, seed)
        candidates, b, r = lsh_pairs(signatures)
        for (i, j), similarity in truth.items():
            hits = curve.setdefault(round(similarity * 20) / 20, [0, 0])
            hits[0] += (j, i) in candidates
            hits[1] += 1
        if not guesses:
            by_similarity = {}  # 绝大多数的对毫不相像：每一格只取 60 对，从不像到像都看得见
            for pair, similarity in truth.items():
                by_similarity.setdefault(round(similarity * 20), []).append(pair)
            guesses = [(truth[i, j], signatures[i].jaccard(signatures[j])) for each in by_similarity.values() for i, j in each[:60]]
    points = [(s, found / count, count) for s, (found, count) in sorted(curve.items()) if count >= 10]
    error = math.sqrt(statistics.mean((true - guess) ** 2 for true, guess in guesses))
    expected = math.sqrt(statistics.mean(true * (1 - true) / PERMUTATIONS for true, _ in guesses))
    print(f"\nMinHash 猜的相似度，误差（均方根）{error:.3f}；公式 √(s(1 − s) / {PERMUTATIONS}) 给出 {expected:.3f}")
    seconds = seconds_by_size(texts, SIZES[:2] if quick else SIZES)
    for size, slow, fast in seconds:
        print(f"  {size:6,} 条　两两都比 {slow:7.2f} 秒　LSH {fast:6.2f} 秒　" + (f"快 {slow / fast:.1f} 倍" if slow > fast else f"慢 {fast / slow:.1f} 倍"))
    path = OUTPUTS / f"near_duplicates{'_quick' if quick else ''}.png"
    draw(guesses, points, seconds, (b, r), path)
    print(f"图片已写到 {path}")
    check(guesses, points, error, expected, (b, r))


def check(guesses, points, error, expected, bands):
    """自查。

    参数:
        guesses, points (list[tuple]): 见 draw
        error, expected (float): MinHash 的误差，量到的、公式的
        bands (tuple): LSH 的几段、一段几个数
    """
    print("\n这个数字对吗？")
    vectors = tfidf(["abc abd", "abc abd", "xyz"])
    confirm("一样的两条，余弦是 1；没有共同片段的是 0", abs((vectors[0] @ vectors[1]).item() - 1) < 1e-6 and (vectors[0] @ vectors[2]).item() == 0, "没有缩放到长度 1")
    confirm("手算：{abc, bcd} 与 {abc, xyz}，杰卡德是 1/3", abs(jaccard({"abc", "bcd"}, {"abc", "xyz"}) - 1 / 3) < 1e-12, "分母是合起来的，不是加起来的")
    confirm(f"MinHash 的误差与公式相差不到三成（{error:.3f}、{expected:.3f}，{len(guesses)} 对）", abs(error - expected) < 0.3 * expected, "签名之间不独立，或片段没有去重")
    b, r = bands
    gaps = [abs(found - (1 - (1 - s**r) ** b)) for s, found, count in points if count >= 100]
    confirm(f"LSH 找得到的机会，与 S 形的公式最多差 {max(gaps):.2f}（格子宽 0.05，公式在陡处一格就变 {max_step(b, r):.2f}）", max(gaps) < max_step(b, r), "一段几个数、切成几段，与公式里的反了")
    confirm("甲像乙、乙像丙，连成一组；不相干的不在里面", groups({(0, 1), (1, 4), (2, 5)}, 7) == [[0, 1, 4], [2, 5]], "合并时只改了一条，没有改整组")


def max_step(b, r):
    """S 形的曲线，隔 0.05 最多变多少。

    参数:
        b, r (int): 几段，一段几个数

    返回:
        float: 0 到 1
    """
    values = [1 - (1 - (i / 20) ** r) ** b for i in range(21)]
    return max(after - before for before, after in zip(values, values[1:]))


def clean(entries, source, out):
    """每组只留第一条，写到新文件。

    参数:
        entries (list[dict]): 指令数据
        source, out (str): 从哪里来，写到哪里

    异常:
        ValueError: 要写的就是原来的文件
    """
    if Path(out).resolve() == Path(source).resolve():
        raise ValueError(f"--out 不能就是原来的文件 {source}：删错了就没有了，换个名字")
    similarity = cosine([f"{entry['instruction']} {entry['input']} {entry['output']}" for entry in entries])
    gone = {i for group in groups(similar_pairs(similarity, 0.9), len(entries)) for i in group[1:]}
    part = Path(out).with_name(Path(out).name + ".part")
    part.write_text(json.dumps([entry for i, entry in enumerate(entries) if i not in gone], ensure_ascii=False, indent=2), encoding="utf-8")
    part.replace(out)
    print(f"余弦 ≥ 0.9 的每组留第一条（题目和答案一起比）：{len(entries)} 条留下 {len(entries) - len(gone)} 条，写到 {out}")


def main():
    """找几乎一样的指令。"""
    parser = argparse.ArgumentParser(description="实验　几乎一样的题：怎样找出来，找出来的真是同一道吗？")
    parser.add_argument("--file", help="自己的指令数据（JSON，每条有 instruction、input、output）")
    parser.add_argument("--out", help="与 --file 一起用：每组只留第一条，写到这个新文件")
    parser.add_argument("--quick", action="store_true", help="只用 200 条：看流程，不下结论")
    args = parser.parse_args()
    try:
        if args.out and not args.file:
            raise ValueError("--out 要与 --file 一起用")
        if args.file and not Path(args.file).is_file():
            raise ValueError(f"没有这个文件：{args.file}")
        try:
            import datasketch  # noqa: F401　要到用时才用，没有装的现在就说
        except ImportError:
            raise ValueError("还没有装 datasketch：pip install -r setup/requirements-data.txt") from None
        paths = {"你的": args.file} if args.file else {"自带的": find_data("instructions.json"), "原书的": find_data("instruction-data.json", "instructions.json")}
        for title, path in paths.items():
            if title == "原书的" and (path == paths["自带的"] or args.quick):
                continue
            entries = download_and_load_file(path, "")
            if len(entries) > 20_000:
                raise ValueError(f"{path} 有 {len(entries):,} 条，两两的表格放不下：这个脚本最多 20,000 条")
            entries = entries[:200] if args.quick else entries
            thresholds_table(f"{title}指令　{path}", entries, cosine([f"{entry['instruction']} {entry['input']}" for entry in entries]))
            if args.out:
                clean(entries, args.file, args.out)
        if args.quick:
            print("\n--quick：看流程，不下结论")
        if not args.file:
            entries = download_and_load_file(paths["自带的"], "")
            compare(entries[:200] if args.quick else entries, args.quick)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
