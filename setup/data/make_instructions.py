"""生成 instructions.json：1,105 条有标准答案的英文指令，第 7 章没有原书数据时用它

样子与原书的 instruction-data.json 相同，每条有 instruction、input、output；另外多两个键，训练时用不到，打分时才用：
    rule　哪条规则造的，如 plural（复数）
    item　问的是什么，如 cat；rule 和 item 都相同，就是同一个事实，只是问法不同
内容全部由下面的词表和句式按规则拼出来，为本项目写的，没有摘抄任何现成的数据。许可：CC0 1.0，可任意使用，不必署名。

怎样让一个只有两千万参数、只读过一篇小说的模型也学得会：
    · 词表是封闭的：24 个词、12 个数、7 天，查表类的事实各有两到七种问法；
    · 答案与原书的数据一样写成整句，把问的词重复一遍（"The plural of cat is cats."），对错仍然一比便知；
    · 词总在最前面（"Noun: cat. …"），或单独放在 input 里，模型不必先学会到处找它。
怎样让分数诚实：
    · 没有两条的 instruction 和 input 完全相同；
    · 测试题有两种，打分时分开数：事实训练时问过、问法是新的；事实没有问过，要真的会做才答得出
      （HELD_OUT 里的三个词形变化，和 larger、sort、pick、yesno 里多半没有见过的组合）。

运行：
    python setup/data/make_instructions.py              # 重写 setup/data/instructions.json，每次都逐字节相同
    python setup/data/make_instructions.py --out 文件   # 写到别处
    约 1 秒，0.1 GB（2 核 CPU）
"""

import argparse
import json
import random
from pathlib import Path

PATH = Path(__file__).resolve().parent / "instructions.json"
SEED = 123
# 词 → 复数、类别
NOUNS = {
    "cat": ("cats", "animal"), "fox": ("foxes", "animal"), "mouse": ("mice", "animal"), "car": ("cars", "vehicle"),
    "bus": ("buses", "vehicle"), "hat": ("hats", "garment"), "dress": ("dresses", "garment"), "egg": ("eggs", "food"),
}  # fmt: skip
# 词 → 反义词、比较级
ADJECTIVES = {
    "big": ("small", "bigger"), "small": ("big", "smaller"), "hot": ("cold", "hotter"), "cold": ("hot", "colder"),
    "fast": ("slow", "faster"), "slow": ("fast", "slower"), "old": ("young", "older"), "young": ("old", "younger"),
}  # fmt: skip
# 词 → 过去式、-ing 形式
VERBS = {
    "go": ("went", "going"), "eat": ("ate", "eating"), "take": ("took", "taking"), "write": ("wrote", "writing"),
    "run": ("ran", "running"), "walk": ("walked", "walking"), "cook": ("cooked", "cooking"), "stop": ("stopped", "stopping"),
}  # fmt: skip
WORDS = [*NOUNS, *ADJECTIVES, *VERBS]
NUMBERS = "one two three four five six seven eight nine ten eleven twelve".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
CATEGORIES = ["animal", "vehicle", "garment", "food"]
# 这几个事实，一种问法也不进训练集。三个都是规则变化（cat → cats），词本身在别的规则里都见过：看它会不会举一反三。
HELD_OUT = {("plural", "cat"), ("ing", "walk"), ("comparative", "fast")}


def with_article(word):
    """加上 a 或 an。

    参数:
        word (str): 名词

    返回:
        str: 如 "an egg"
    """
    return ("an " if word[0] in "aeiou" else "a ") + word


def facts(rule, kind, items, question, task, answer, asked=7):
    """一条查表的规则：每个词几种问法，答案都一样。

    参数:
        rule (str): 规则的名字
        kind (str): 开头怎样称呼这个词，如 "Noun"
        items (list[str]): 词
        question (str): 问句，{x} 换成词
        task (str): 祈使句，{x} 换成词
        answer (callable): 词 → 答案
        asked (int): 用几种问法，2 到 7

    返回:
        list[dict]: 指令数据
    """
    softened = question[0].lower() + question[1:]
    forms = [
        ("{kind}: {x}. " + question, ""),
        (question, "{kind}: {x}"),  # 词也放在 input 里
        ("{kind}: {x}. " + task, ""),
        ("{kind}: {x}. Please answer: " + softened, ""),
        (task, "{kind}: {x}"),
        ("{kind}: {x}. Please " + task[0].lower() + task[1:], ""),
        ("{kind}: {x}. Tell me: " + softened, ""),
    ]
    return [
        {"instruction": instruction.format(kind=kind, x=item), "input": text.format(kind=kind, x=item), "output": answer(item), "rule": rule, "item": item}
        for item in items
        for instruction, text in forms[:asked]
    ]


def combinations(rule, make, number, rng):
    """一条组合的规则：从很多种组合里随机抽一些，互不相同。

    参数:
        rule (str): 规则的名字
        make (callable): 造一条，返回 instruction、input、output、item
        number (int): 造几条
        rng (random.Random): 随机数

    返回:
        list[dict]: 指令数据；组合不够多时，可能少于 number
    """
    found, tries = {}, 0
    while len(found) < number and tries < 200 * number:
        instruction, text, output, item = make(rng)
        found.setdefault((instruction, text), {"instruction": instruction, "input": text, "output": output, "rule": rule, "item": item})
        tries += 1
    return list(found.values())


def make_larger(rng):
    """两个数比大小。

    参数:
        rng (random.Random): 随机数

    返回:
        tuple[str, str, str, str]: instruction、input、output、item
    """
    a, b = rng.sample(range(1, 13), 2)
    instruction, text = rng.choice([(f"Numbers: {a}, {b}. Which one is larger?", ""), (f"Numbers: {a}, {b}. Find the larger one.", ""), ("Find the larger number.", f"Numbers: {a}, {b}")])
    return instruction, text, f"{max(a, b)} is larger than {min(a, b)}.", f"{a}, {b}"


def make_sort(rng):
    """两个词按字母排序。

    参数:
        rng (random.Random): 随机数

    返回:
        tuple[str, str, str, str]: instruction、input、output、item
    """
    a = rng.choice(WORDS)
    b = rng.choice([word for word in WORDS if word[0] != a[0]])  # 首字母不同，一眼就分得出
    instruction, text = rng.choice([(f"Words: {a}, {b}. Sort them alphabetically.", ""), ("Put them in alphabetical order.", f"Words: {a}, {b}")])
    return instruction, text, f"In alphabetical order: {', '.join(sorted([a, b]))}.", f"{a}, {b}"


def make_pick(rng):
    """从三个词里挑出第一个或最后一个。

    参数:
        rng (random.Random): 随机数

    返回:
        tuple[str, str, str, str]: instruction、input、output、item
    """
    words = rng.sample(WORDS, 3)
    which = rng.choice(["first", "last"])
    listed = ", ".join(words)
    instruction, text = rng.choice([(f"Words: {listed}. Which word is {which}?", ""), (f"Find the {which} word.", f"Words: {listed}")])
    return instruction, text, f"The {which} word is {words[0 if which == 'first' else -1]}.", f"{which} of {listed}"


def make_entries():
    """全部规则，还没有打乱。

    返回:
        list[dict]: 指令数据
    """
    kinds = dict.fromkeys(NOUNS, "noun") | dict.fromkeys(ADJECTIVES, "adjective") | dict.fromkeys(VERBS, "verb")
    numbers = [str(number) for number in range(1, 13)]
    entries = [
        *facts("plural", "Noun", NOUNS, "What is the plural of {x}?", "Write more than one {x}.", lambda x: f"The plural of {x} is {NOUNS[x][0]}."),
        *facts("category", "Noun", NOUNS, "What kind of thing is {x}?", "Name the group of {x}.", lambda x: f"The group of {x} is {NOUNS[x][1]}."),
        *facts("opposite", "Adjective", ADJECTIVES, "What is the opposite of {x}?", "Give an antonym of {x}.", lambda x: f"The opposite of {x} is {ADJECTIVES[x][0]}."),
        *facts("comparative", "Adjective", ADJECTIVES, "What is the comparative of {x}?", "Compare two things with {x}.", lambda x: f"The comparative of {x} is {ADJECTIVES[x][1]}."),
        *facts("past", "Verb", VERBS, "What is the past tense of {x}?", "Put {x} into the past.", lambda x: f"The past tense of {x} is {VERBS[x][0]}."),
        *facts("ing", "Verb", VERBS, "What is the -ing form of {x}?", "Add -ing to {x}.", lambda x: f"The -ing form of {x} is {VERBS[x][1]}."),
        *facts("spell", "Word", WORDS, "How do you spell {x}?", "Spell {x} letter by letter.", lambda x: f"The word {x} is spelled {'-'.join(x)}.", 4),
        *facts("length", "Word", WORDS, "How many letters are in {x}?", "Count the letters of {x}.", lambda x: f"The word {x} has {len(x)} letters.", 4),
        *facts("letter", "Word", WORDS, "Which letter does {x} start with?", "Name the first letter of {x}.", lambda x: f"The word {x} starts with {x[0]}.", 3),
        *facts("kind", "Word", WORDS, "What part of speech is {x}?", "Say what kind of word {x} is.", lambda x: f"The word {x} is {with_article(kinds[x])}.", 3),
        *facts("repeat", "Word", WORDS, "How do you say {x} twice?", "Write {x} two times.", lambda x: f"Two times: {x} {x}", 2),
        *facts("digits", "Number", NUMBERS, "What is {x} in digits?", "Write {x} in digits.", lambda x: f"The number {x} is {NUMBERS.index(x) + 1}.", 5),
        *facts("next", "Number", numbers, "What comes after {x}?", "Add one to {x}.", lambda x: f"The number after {x} is {int(x) + 1}."),
        *facts("tomorrow", "Day", DAYS, "Which day comes after {x}?", "Name the day after {x}.", lambda x: f"The day after {x} is {DAYS[(DAYS.index(x) + 1) % 7]}."),
    ]
    for noun, (_, category) in NOUNS.items():
        for other in CATEGORIES:
            question = f"Noun: {noun}. Is {with_article(noun)} {with_article(other)}?"
            answer = f"Yes, {with_article(noun)} is {with_article(other)}." if other == category else f"No, {with_article(noun)} is not {with_article(other)}."
            entries.append({"instruction": question, "input": "", "output": answer, "rule": "yesno", "item": f"{noun}, {other}"})
    rng = random.Random(SEED)
    entries += combinations("larger", make_larger, 60, rng)
    entries += combinations("sort", make_sort, 40, rng)
    entries += combinations("pick", make_pick, 60, rng)
    return entries


def make_instructions():
    """打乱，并把 HELD_OUT 的事实都放到后 15%（测试和验证）里：第 7 章按文件里的次序切分，不再打乱。

    返回:
        list[dict]: 指令数据，切成 85% / 10% / 5% 就能用
    """
    entries = make_entries()
    rng = random.Random(SEED)
    held = [entry for entry in entries if (entry["rule"], entry["item"]) in HELD_OUT]
    rest = [entry for entry in entries if (entry["rule"], entry["item"]) not in HELD_OUT]
    rng.shuffle(rest)
    train = int(len(entries) * 0.85)
    tail = held + rest[train:]
    rng.shuffle(tail)
    return rest[:train] + tail


def main():
    """写出 instructions.json。"""
    parser = argparse.ArgumentParser(description="生成第 7 章的指令数据")
    parser.add_argument("--out", type=Path, default=PATH, help="写到哪里（默认：setup/data/instructions.json）")
    args = parser.parse_args()
    entries = make_instructions()
    # 一条一行，改动时看得清差别
    text = "[\n" + ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries) + "\n]\n"
    args.out.write_bytes(text.encode("utf-8"))
    print(f"{args.out}　{len(entries):,} 条，{args.out.stat().st_size:,} 字节")


if __name__ == "__main__":
    main()
