"""生成 instructions.json：1,103 条有标准答案的英文指令，第 7 章没有原书数据时用它

样子与原书的 instruction-data.json 相同，每条有 instruction、input、output；另外多两个键，训练时用不到，打分时才用：
    rule　哪条规则造的，如 plural（复数）
    item　问的是什么，如 cat；rule 和 item 都相同，就是同一个事实，只是问法不同
内容全部由下面的词表和句式按规则拼出来，为本项目写的，没有摘抄任何现成的数据。许可：CC0 1.0，可任意使用，不必署名。

怎样让一个只有两千万参数、只读过一篇小说的模型也学得会：
    · 词表是封闭的：36 个词、12 个数、7 天，同一个事实用四到六种问法；
    · 答案很短，只有一种写法，对错一比便知。
怎样让分数诚实：
    · 没有两条的 instruction 和 input 完全相同；
    · 测试题有两种，打分时分开数：事实训练时问过、问法是新的；事实没有问过（larger、first、last、yesno），要真的会做才答得出。

运行：
    python setup/data/make_instructions.py                       # 重写 setup/data/instructions.json，每次都逐字节相同
    python setup/data/make_instructions.py --out 文件            # 写到别处
    约 1 秒，0.1 GB（2 核 CPU）
"""

import argparse
import json
import random
from pathlib import Path

PATH = Path(__file__).resolve().parent / "instructions.json"
SEED = 123
# 名词 → 复数、类别
NOUNS = {
    "cat": ("cats", "animal"), "dog": ("dogs", "animal"), "fox": ("foxes", "animal"), "mouse": ("mice", "animal"),
    "car": ("cars", "vehicle"), "bus": ("buses", "vehicle"), "train": ("trains", "vehicle"),
    "hat": ("hats", "garment"), "coat": ("coats", "garment"), "dress": ("dresses", "garment"),
    "apple": ("apples", "food"), "egg": ("eggs", "food"),
}  # fmt: skip
# 形容词 → 反义词、比较级
ADJECTIVES = {
    "big": ("small", "bigger"), "small": ("big", "smaller"), "hot": ("cold", "hotter"), "cold": ("hot", "colder"),
    "fast": ("slow", "faster"), "slow": ("fast", "slower"), "old": ("young", "older"), "young": ("old", "younger"),
    "rich": ("poor", "richer"), "poor": ("rich", "poorer"), "high": ("low", "higher"), "low": ("high", "lower"),
}  # fmt: skip
# 动词 → 过去式、-ing 形式
VERBS = {
    "go": ("went", "going"), "eat": ("ate", "eating"), "take": ("took", "taking"), "write": ("wrote", "writing"),
    "run": ("ran", "running"), "sing": ("sang", "singing"), "walk": ("walked", "walking"), "play": ("played", "playing"),
    "jump": ("jumped", "jumping"), "cook": ("cooked", "cooking"), "stop": ("stopped", "stopping"), "buy": ("bought", "buying"),
}  # fmt: skip
NUMBERS = "one two three four five six seven eight nine ten eleven twelve".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
WORDS = [*NOUNS, *ADJECTIVES, *VERBS]
SPEECH = dict.fromkeys(NOUNS, "noun") | dict.fromkeys(ADJECTIVES, "adjective") | dict.fromkeys(VERBS, "verb")

# 每条规则：问哪些词、几种问法、怎样答。{x} 是词，{ax} 带冠词；竖线后面的放进 input。
FACTS = {
    "plural": (NOUNS, ["What is the plural of {x}?", "Write the plural form.|{x}", "What do you call more than one {x}?", "Give the plural of the noun.|{x}", "Make this noun plural.|{x}", "Turn {x} into the plural."], lambda x: NOUNS[x][0]),
    "category": (NOUNS, ["What kind of thing is {ax}?", "Name the category.|{x}", "Which group does {ax} belong to?", "Say what sort of thing this is.|{x}", "Classify the word.|{x}", "What is {ax}?"], lambda x: NOUNS[x][1]),
    "opposite": (ADJECTIVES, ["What is the opposite of {x}?", "Write a word that means the opposite.|{x}", "Give an antonym of {x}.", "Name the opposite.|{x}", "Which word is the opposite of {x}?", "Find the antonym.|{x}"], lambda x: ADJECTIVES[x][0]),
    "comparative": (ADJECTIVES, ["What is the comparative form of {x}?", "Write the comparative.|{x}", "Give the comparative of {x}.", "Compare two things with this adjective.|{x}", "Which form of {x} compares two things?", "Put the adjective into the comparative.|{x}"], lambda x: ADJECTIVES[x][1]),
    "past": (VERBS, ["What is the past tense of {x}?", "Put the verb into the past tense.|{x}", "Write the past form of the verb {x}.", "Give the past tense.|{x}", "Which form of {x} do we use for yesterday?", "Change the verb to the past.|{x}"], lambda x: VERBS[x][0]),
    "ing": (VERBS, ["What is the -ing form of {x}?", "Write the -ing form.|{x}", "Add -ing to the verb {x}.", "Give the -ing form.|{x}", "Which form of {x} follows the word am?", "Turn the verb into its -ing form.|{x}"], lambda x: VERBS[x][1]),
    "letter": (WORDS, ["What is the first letter of {x}?", "Which letter does it start with?|{x}", "Name the first letter.|{x}", "With which letter does {x} begin?"], lambda x: x[0]),
    "speech": (WORDS, ["Is {x} a noun, a verb or an adjective?", "Name the part of speech.|{x}", "What kind of word is {x}?", "Which part of speech is this word?|{x}"], lambda x: SPEECH[x]),
    "digit": (NUMBERS, ["Write the number {x} in digits.", "Turn the word into digits.|{x}", "Which digits stand for {x}?", "Write it as a figure.|{x}", "How is {x} written in digits?"], lambda x: str(NUMBERS.index(x) + 1)),
    "after": ([str(i) for i in range(1, 13)], ["What number comes after {x}?", "Add one.|{x}", "Count one up from {x}.", "Name the next number.|{x}", "What is {x} plus one?"], lambda x: str(int(x) + 1)),
    "day": (DAYS, ["What day comes after {x}?", "Name the next day.|{x}", "Today is {x}. What day is tomorrow?", "Which day follows {x}?", "Name the day after this one.|{x}"], lambda x: DAYS[(DAYS.index(x) + 1) % 7]),
}


def with_article(word):
    """给名词加上 a 或 an。

    参数:
        word (str): 名词

    返回:
        str: 如 "an apple"
    """
    return ("an " if word[0] in "aeiou" else "a ") + word


def entry(question, output, rule, item):
    """一条指令。

    参数:
        question (str): 指令；有竖线的话，后面的放进 input
        output (str): 标准答案
        rule (str): 哪条规则
        item (str): 问的是什么

    返回:
        dict: 与原书同样的三个键，加上 rule 和 item
    """
    instruction, _, text = question.partition("|")
    return {"instruction": instruction, "input": text, "output": output, "rule": rule, "item": item}


def make_instructions():
    """全部指令，已经打乱：第 7 章按文件里的次序切分，不再打乱。

    返回:
        list[dict]: 指令数据，切成 85% / 10% / 5% 就能用
    """
    entries = [
        entry(form.format(x=x, ax=with_article(x)), answer(x), rule, x)
        for rule, (items, forms, answer) in FACTS.items()
        for x in items
        for form in forms
    ]  # fmt: skip
    for noun, (_, category) in NOUNS.items():
        for other in sorted({category for _, category in NOUNS.values()}):
            entries.append(entry(f"Is {with_article(noun)} {with_article(other)}?", "Yes" if other == category else "No", "yesno", f"{noun}, {other}"))

    # 下面两条规则的组合多得问不完，随机抽一些：测试集里的多半没有见过。
    rng, seen = random.Random(SEED), set()
    while len(seen) < 90:
        a, b = rng.sample(range(1, 13), 2)
        form = rng.choice(["Which number is larger, {a} or {b}?", "Name the larger number.|{a}, {b}", "Find the larger of {a} and {b}."]).format(a=a, b=b)
        if form not in seen:
            seen.add(form)
            entries.append(entry(form, str(max(a, b)), "larger", f"{min(a, b)}, {max(a, b)}"))
    seen = set()
    while len(seen) < 90:
        words = rng.sample(WORDS, 3)
        form = rng.choice(["Find the first word.|{w}", "Which word comes first?|{w}", "Find the last word.|{w}", "Which word comes last?|{w}"]).format(w=", ".join(words))
        if form not in seen:
            seen.add(form)
            which = "first" if "first" in form else "last"
            entries.append(entry(form, words[0] if which == "first" else words[-1], which, ", ".join(words)))
    random.Random(SEED).shuffle(entries)
    return entries


def main():
    """写出 instructions.json。"""
    parser = argparse.ArgumentParser(description="生成第 7 章的指令数据")
    parser.add_argument("--out", type=Path, default=PATH, help="写到哪里（默认：setup/data/instructions.json）")
    args = parser.parse_args()
    entries = make_instructions()
    # 一条一行，改动时看得清差别
    text = "[\n" + ",\n".join(json.dumps(each, ensure_ascii=False) for each in entries) + "\n]\n"
    args.out.write_bytes(text.encode("utf-8"))
    print(f"{args.out}　{len(entries):,} 条，{args.out.stat().st_size:,} 字节")


if __name__ == "__main__":
    main()
