"""生成一份带标注的英文影评，第 6 章的 exp_larger_dataset.py 在没有 IMDb 时用它

每条是一句评价，混在三句闲话里；1 是好评，0 是差评。好坏由这一句话的结构决定，不由哪一个词决定：
    · 直说（四成）：The acting is superb, and the plot is clever.
    · 否定（两成）：The plot is not dull at all. 里面的评价词与结论相反，"not" 有时隔得很远
    · 转折（两成）：The acting is superb, but the plot is dull, and that is what stays with me. 主句算数
    · 转述（两成）：My sister found it superb; I found it dull. 自己的看法算数
影评一正一负成对，两条只有评价词换了，别的一字不差；转折、转述的一对，用的词完全相同，只是位置对调：
只数单个词的方法，给这一对的分数必定相同，正好对一条、错一条。

能看出什么：一种方法会不会用词序，换了训练时没见过的评价词（fresh 那一份，都是直说）还认不认得。
看不出什么：真的影评里词序有多要紧。句式只有十六种，比真的影评规整得多；各种各占几成，是这里定的，不是数出来的。
同样的参数，每次都逐字节相同。句子全是为本项目写的，许可：CC0 1.0。

运行：
    python setup/data/make_reviews.py reviews.csv      # 写成 CSV：text、label、kind、part 四列
    约 1 秒，0.1 GB（2 核 CPU）
"""

import csv
import os
import random
import re
import sys
from pathlib import Path

SIZES = {"train": 4000, "validation": 200, "test": 800, "fresh": 200}  # 各几条，都是偶数

# 材料。句式里 {x}、{y} 的评价与结论一致，{o} 相反
GOOD = "superb gripping moving charming clever brilliant delightful touching convincing elegant fresh thrilling funny warm memorable sharp".split()
BAD = "dull clumsy boring shallow lifeless dreadful tedious silly predictable annoying flat messy confusing cold forgettable lazy".split()
NEW = ("marvellous captivating splendid heartfelt riveting witty".split(), "atrocious dreary hollow pathetic sloppy tiresome".split())  # 只在最后考
FRAMES = {
    "直说": ["The {a} is {x}{t}, and the {b} is {y}.", "I found the {a} {x}{t} and the {b} {y}.", "How {y} the {b} is, and how {x} the {a}!"],
    "否定": [
        "The {a} is not {o} at all.", "I would not call the {a} {o}{t}.", "There is nothing {o} about the {a}.",
        "Nobody in the whole cinema could have called the {a} {o}.", "At no point, not for one minute, is the {a} {o}.",
    ],
    "转折": [
        "The {a} is {o}{t}, but the {b} is {x}, and that is what stays with me.", "Although the {a} is {o}{t}, the {b} is {x}, and that decides it.",
        "The {b} is {x}, and that decides it, although the {a} is {o}{t}.", "What stays with me is the {x} {b}, not the {o} {a}.",
    ],
    "转述": [
        "{who} found the {a} {o}{t}; I found it {x}.", "I found the {a} {x}{t}; {who} found it {o}.",
        "According to {who} the {a} is {o}, but to me it is {x}.", "To me the {a} is {x}, but according to {who} it is {o}.",
    ],
}  # fmt: skip
CHAT = [
    "I saw it on a {day} evening with {who}.", "It runs for about {minutes} minutes.", "Most of it was shot in {city}.", "We sat in row {few} of a small cinema in {city}.",
    "The tickets cost {few} euros each.", "It is the {nth} film by this director.", "The story takes place in {city}, some {minutes} years ago.",
    "The rain outside had just stopped.", "{who} had paid for the popcorn.", "The DVD comes with {few} extra scenes.",
]  # fmt: skip
SLOTS = {
    "a": "acting plot music photography dialogue ending pacing script cast directing humour story".split(), "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(),
    "who": ["my brother", "my sister", "a friend of mine", "the man beside me", "a colleague", "my teacher", "the critic in our paper"], "city": "Lisbon Oslo Kyoto Lima Prague Dublin Cairo Boston".split(),
    "nth": "second third fourth fifth sixth".split(), "minutes": [str(i) for i in range(80, 180, 5)], "few": [str(i) for i in range(3, 19)],
    "t": ["", "", "", " from start to finish", " in every scene", " most of the time"],
}  # fmt: skip


def fill(rng, frame, known):
    """把 {…} 一个一个填上：known 里有的用它，没有的从 SLOTS 里抽；句首大写。

    参数:
        rng (random.Random): 抽签用
        frame (str): 句式
        known (dict): 已经定了的

    返回:
        str: 一句话
    """
    text = re.sub(r"\{(\w+)\}", lambda slot: known[slot[1]] if slot[1] in known else rng.choice(SLOTS[slot[1]]), frame)
    return text[0].upper() + text[1:]


def make_reviews(count, seed, kinds, words=(GOOD, BAD)):
    """造影评，一正一负成对：两条只有评价词换了，别的一字不差。转折、转述的一对，用的词完全相同，只是位置对调。

    参数:
        count, seed (int): 几条（偶数）；随机种子
        kinds (dict): 种类 → 占几份
        words (tuple): 好的评价词，坏的评价词

    返回:
        list[tuple]: （文字，1 是好评、0 是差评，种类）；挨着的两条是一对
    """
    rng, rows, turns = random.Random(seed), [], [kind for kind, share in kinds.items() for _ in range(share)]
    for turn in range(count // 2):
        kind, (good, fine), (bad, poor) = turns[turn % len(turns)], rng.sample(words[0], 2), rng.sample(words[1], 2)
        a, b = rng.sample(SLOTS["a"], 2)
        frame, chat, place, start = rng.choice(FRAMES[kind]), rng.sample(CHAT, 3), rng.randrange(4), rng.getrandbits(32)
        for label, x, y, o in ((1, good, fine, bad), (0, bad, poor, good)):
            again = random.Random(start)  # 一对里抽到的闲话也相同
            sentences = [fill(again, sentence, {"a": a, "b": b, "x": x, "y": y, "o": o}) for sentence in [*chat[:place], frame, *chat[place:]]]
            rows.append((" ".join(sentences), label, kind))
    return rows


def write_reviews(path, sizes):
    """造一份影评，写成 CSV：text、label、kind、part 四列。

    参数:
        path (Path): 写到哪里
        sizes (dict): 哪一份 → 几条

    返回:
        Path: path
    """
    kinds = {"直说": 4, "否定": 2, "转折": 2, "转述": 2}
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".part"), "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "kind", "part"])
        for seed, (part, count) in enumerate(sizes.items(), start=1):
            words = {"kinds": {"直说": 1}, "words": NEW} if part == "fresh" else {"kinds": kinds}
            writer.writerows([text, label, "换了评价词" if part == "fresh" else kind, part] for text, label, kind in make_reviews(count, seed, **words))
    os.replace(path.with_suffix(".part"), path)
    return path


def main():
    """写出影评。"""
    if len(sys.argv) != 2:
        sys.exit("用法：python setup/data/make_reviews.py 写到哪个文件.csv")
    path = write_reviews(Path(sys.argv[1]), SIZES)
    print(f"{path}　{sum(SIZES.values()):,} 条，{path.stat().st_size:,} 字节")


if __name__ == "__main__":
    main()
