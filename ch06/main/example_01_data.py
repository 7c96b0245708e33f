"""第 6 章 · 6.2 节　准备数据集：读进来，平衡，切分

读完你应该能回答：
    1. 同一个文件，为什么有人读出 5,572 条，有人读出 5,574 条？
    2. 八成七的短信都正常；不平衡就训练，模型最容易学会什么？
    3. 训练集、验证集、测试集各做什么用？一条短信同时出现在两边，会怎样？

运行：
    python ch06/main/example_01_data.py
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 1 秒，0.1 GB（2 核 CPU）

形状记号（全书统一）：n 样本数
"""

import csv
import io
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np

LABELS = {"ham": 0, "spam": 1}


# region 沿用 setup/find_data.py: find_data, read_text
def find_data(*names):
    """到几个数据文件夹里依次找，返回找到的第一个；都没有，就说先运行哪条命令，退出码 2。（详解见 setup/find_data.py）"""
    here = Path(__file__ if "__file__" in globals() else "x").resolve()
    root = next((folder for folder in here.parents if (folder / "setup" / "data").is_dir()), Path())
    for folder in [os.environ.get("LLM_DATA_DIR"), root / "setup" / "downloads", root / "setup" / "data", root / "ch05" / "outputs"]:
        for name in names:
            if folder and (Path(folder) / name).exists():
                return Path(folder) / name
    commands = {"tiktoken": "setup/prepare.py", "gpt_mini.pth": "ch05/main/gpt_train.py（约 90 秒）", "gpt2-124M.pth": "ch05/main/gpt_download.py"}
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


# region 沿用 ch06/main/gpt_class_finetune.py: load_messages, create_balanced_dataset, random_split
def load_messages(path):
    """读短信：每行「标签<制表符>正文」。（详解见 ch06/main/gpt_class_finetune.py）"""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter="\t")
    rows, problems, start = [], [], 1
    try:
        for row in reader:
            if len(row) == 2 and row[0] in LABELS and row[1].strip():
                rows.append((row[0], row[1]))
            elif row:
                wrong = "没有制表符" if len(row) == 1 else "制表符不止一个" if len(row) > 2 else "正文是空的" if row[0] in LABELS else f"标签 {row[0]!r} 不是 ham 或 spam"
                problems.append(f"第 {start} 行{wrong}")
            start = reader.line_num + 1
    except csv.Error:
        problems.append(f"第 {start} 行的引号没有配对")
    if problems:
        more = f"……共 {len(problems)} 处" if len(problems) > 3 else ""
        raise ValueError(f"{path} 的格式不对：{'；'.join(problems[:3])}{more}。每行应是「ham 或 spam<制表符>正文」")
    return rows


def create_balanced_dataset(rows):
    """让两类一样多：多的那一类随机抽，少的那一类全要。（详解见 ch06/main/gpt_class_finetune.py）"""
    ham = [row for row in rows if row[0] == "ham"]
    spam = [row for row in rows if row[0] == "spam"]
    if not ham or not spam:
        raise ValueError(f"数据里只有 {len(ham)} 条 ham、{len(spam)} 条 spam，两类都要有才能学着分辨")
    n = min(len(ham), len(spam))
    shuffled = np.random.RandomState(123).permutation(len(ham))
    return [ham[i] for i in shuffled[:n]] + spam[:n]


def random_split(rows, train_frac, validation_frac):
    """打乱，再切成训练集、验证集、测试集。（详解见 ch06/main/gpt_class_finetune.py）"""
    rows = [rows[i] for i in np.random.RandomState(123).permutation(len(rows))]
    train_end = int(len(rows) * train_frac)
    validation_end = train_end + int(len(rows) * validation_frac)
    return rows[:train_end], rows[train_end:validation_end], rows[validation_end:]


# endregion


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion

# %% 6.2.1　读进来
path = find_data("SMSSpamCollection.tsv", "messages.tsv")
rows = load_messages(path)
print(f"【6.2】{path}")
print(f"【6.2】{len(rows)} 条，头 5 条：")
for label, text in rows[:5]:
    print(f"  {label:<5}{text}")

# %% 陷阱：引号
# 在 CSV 的规矩里，一栏以引号开头，就要读到下一个引号才算完，中间的制表符、换行都是内容。短信里的引号却是随手写的：
sample = 'ham\t"On my way\nham\tOk, see you"\nspam\tWIN a "free" phone\n'
quoted = list(csv.reader(io.StringIO(sample), delimiter="\t"))
unquoted = list(csv.reader(io.StringIO(sample), delimiter="\t", quoting=csv.QUOTE_NONE))
print(f"\n【6.2】三行短信，按引号的规矩读出 {len(quoted)} 条，不管引号读出 {len(unquoted)} 条")
for label, text in quoted:
    print(f"  {label:<5}{text!r}")
# 第一条的引号到第二行才配上对，于是两行并成一条，第二行的标签成了正文。引号在中间的（第三行）不受影响。
# 书上用 pandas.read_csv，默认按引号的规矩读：5,574 行并成 5,572 条。我们用 csv 模块，默认相同，才能与书上一条不差。
without = sum(1 for line in read_text(path).splitlines() if line)
merged = [text for _, text in rows if "\nham\t" in text or "\nspam\t" in text]
print(f"【6.2】这份数据有 {without} 行，读成 {len(rows)} 条；{len(merged)} 条吞掉了后面的行")

# %% 6.2.2　数一数：两类相差很多
counts = Counter(label for label, _ in rows)
print(f"\n【6.2】{dict(counts)}")
# 不看内容，一律答"正常"，准确率就有这么高。拿不平衡的数据训练，模型最先学会的正是这一招。
lazy = counts["ham"] / len(rows)
print(f"【6.2】一律答 ham 的准确率　{lazy:.2%}")

# %% 平衡：正常的随机抽，抽到与垃圾的一样多
# 办法不止这一种（也可以给垃圾短信更大的权重），书上选了最简单的：多的扔掉。代价是四千多条正常短信没有用上。
ham = [row for row in rows if row[0] == "ham"]
spam = [row for row in rows if row[0] == "spam"]
# 这两行等于 pandas 的 ham.sample(len(spam), random_state=123)：pandas 里面也是把序号打乱，取前 n 个。
# RandomState 是 NumPy 的旧式随机数发生器；换成新式的 default_rng(123)，抽出来的就不是同一批短信了。
shuffled = np.random.RandomState(123).permutation(len(ham))
balanced = [ham[i] for i in shuffled[: len(spam)]] + spam
print(f"\n【6.2】平衡之后 {dict(Counter(label for label, _ in balanced))}；抽中的头 5 条正常短信是第 {shuffled[:5].tolist()} 条")

# %% 6.2.3　标签换成数字，打乱，切成三份
print(f"【6.2】标签　{LABELS}")
train, validation, test = random_split(balanced, train_frac=0.7, validation_frac=0.1)
print(f"【6.2】训练 {len(train)} 条，验证 {len(validation)} 条，测试 {len(test)} 条")
for name, part in [("训练", train), ("验证", validation), ("测试", test)]:
    print(f"  {name}集里 spam 占 {sum(label == 'spam' for label, _ in part) / len(part):.1%}")
# 训练集用来更新权重；验证集用来挑学习率、轮数这些人定的数；测试集只在最后用一次。
# 反复看着测试集改，等于把考卷当练习册：分数好看，换一份卷子就不灵了。

# %% 泄漏：测试集里有没有训练时见过的？
seen = {text for _, text in train}
leaked = [text for _, text in test if text in seen]
print(f"\n【6.2】测试集的 {len(test)} 条里，有 {len(leaked)} 条与训练集里的一字不差")
# 原书的数据里，群发的短信会重复出现：300 条测试短信，37 条是训练时见过的原题，书上的测试准确率因此略微偏高。
# 自带的数据没有重复，连相似的也没有，办法写在 setup/data/make_messages.py 开头。

# %% 这个数字对吗？
print("\n这个数字对吗？")
confirm("按引号的规矩读出 2 条，不管引号读出 3 条", (len(quoted), len(unquoted)) == (2, 3), "csv 的 quoting 参数改过")
confirm("平衡之后，两类一样多", len(balanced) == 2 * min(len(ham), len(spam)), "抽样的个数写错了")
confirm("一步步做的与 create_balanced_dataset 相同", balanced == create_balanced_dataset(rows), "随机种子或抽样的次序不同")
confirm("三份加起来一条不少", len(train) + len(validation) + len(test) == len(balanced), "切分的起止重叠了，或漏了一条")
if path.stat().st_size == 477_907:  # 大小与原书的那份相同，才核对书上的数
    confirm("与书上相同：5572 条，ham 4825、spam 747", dict(counts) == {"ham": 4825, "spam": 747}, "读的时候关掉了引号")
    confirm("与书上相同：训练 1045、验证 149、测试 300", (len(train), len(validation), len(test)) == (1045, 149, 300), "切分的比例不同")

# %% 动手改
# 1. 把 load_messages 里的 delimiter="\t" 后面加上 quoting=csv.QUOTE_NONE，用原书的数据再运行：5574 条，抽出来的就不是书上那些了。
# 2. 不平衡，直接把 rows 交给 random_split：看看测试集里 spam 占多少，一律答 ham 能得多少分。
# 3. 把 random_split 里的打乱去掉：三份里 spam 各占多少？
