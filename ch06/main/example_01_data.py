"""第 6 章 · 6.2 节　准备数据集：读进来，平衡，切分

读完你应该能回答：
    1. 同一个文件，为什么有人读出 5,572 条，有人读出 5,574 条？
    2. 大多数短信都正常；不平衡就训练，模型最容易学会什么？
    3. 训练集、验证集、测试集各做什么用？一条短信同时出现在两边，会怎样？

运行：
    python ch06/main/example_01_data.py            # 写出 ch06/outputs/ 里的 train.csv、validation.csv、test.csv
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

# 改这里
TRAIN_FRAC, VALIDATION_FRAC = 0.7, 0.1  # 剩下的两成是测试集


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

here = Path(__file__ if "__file__" in globals() else "x").resolve()  # 笔记本里没有 __file__，就从当前文件夹往上找
OUTPUTS = next((folder / "ch06" for folder in here.parents if (folder / "ch06").is_dir()), Path()) / "outputs"

# %% 找到短信文件
# 书上从 UCI 网站下载，那里停过好几次。这里先找原书的文件（python setup/download.py sms-spam），没有就用自带的。
path = find_data("SMSSpamCollection.tsv", "messages.tsv")
print(f"【6.2】{path}")


# %% 读进来
def load_messages(path):
    """读短信：每行是「标签<制表符>正文」，标签是 ham（正常）或 spam（垃圾）。

    参数:
        path (Path): .tsv 文件，UTF-8 编码

    返回:
        list[tuple[str, str]]: 每条是（标签，正文）

    异常:
        ValueError: 读不了，或有一条不是这样写的

    出处: 原书 6.2 节，那里是一行 pandas.read_csv
    """
    advice = f"；哪里不对、怎样转换：python setup/check_data.py {path}"
    try:
        with open(path, encoding="utf-8-sig") as file:  # -sig：去掉 Windows 记事本加在开头的 BOM
            rows = [tuple(row) for row in csv.reader(file, delimiter="\t") if row]
    except (OSError, UnicodeDecodeError, csv.Error):
        raise ValueError(f"读不了 {path}：没有这个文件，或不是 UTF-8 编码的文本，或引号没有配对{advice}") from None
    for number, row in enumerate(rows, start=1):
        if len(row) != 2 or row[0] not in ("ham", "spam") or not row[1].strip():
            found = "\t".join(row)[:40]
            raise ValueError(f"{path} 的第 {number} 条是 {found!r}，应为「ham 或 spam<制表符>正文」{advice}")
        # 引号没有配对，后面的行就成了这一条的正文。原书的数据里有一条吞掉两行，书上照读，这里也放过；吞得再多就停。
        if (swallowed := row[1].count("\nham\t") + row[1].count("\nspam\t")) > 2:
            raise ValueError(f"{path} 的第 {number} 条，引号没有配对，吞掉了后面 {swallowed} 行{advice}")
    ham = sum(label == "ham" for label, _ in rows)
    if not 0 < ham < len(rows):
        raise ValueError(f"{path} 里有 {ham} 条 ham、{len(rows) - ham} 条 spam，两类都要有才能学着分辨{advice}")
    return rows


rows = load_messages(path)
print(f"{len(rows)} 条，头 5 条：")
for label, text in rows[:5]:
    print(f"  {label:<5}{text}")

# %% 陷阱：引号
# 在 CSV 的规矩里，一栏以引号开头，就要读到下一个引号才算完，中间的制表符、换行都是内容。短信里的引号却是随手写的：
sample = 'ham\t"On my way\nham\tOk, see you"\nspam\tWIN a "free" phone\n'
quoted = list(csv.reader(io.StringIO(sample), delimiter="\t"))
unquoted = list(csv.reader(io.StringIO(sample), delimiter="\t", quoting=csv.QUOTE_NONE))
print(f"\n三行短信，按引号的规矩读出 {len(quoted)} 条，不管引号读出 {len(unquoted)} 条")
for label, text in quoted:
    print(f"  {label:<5}{text!r}")
# 第一条的引号到第二行才配上对，于是两行并成一条，第二行的标签成了正文。引号在中间的（第三行）不受影响。
# pandas.read_csv 默认按引号的规矩读，原书的 5,574 行因此是 5,572 条。csv 模块默认也一样，读出来才与书上一条不差。
line_count = sum(1 for line in path.read_text(encoding="utf-8").splitlines() if line)
merged = [text for _, text in rows if "\nham\t" in text or "\nspam\t" in text]
print(f"这份数据有 {line_count} 行，读成 {len(rows)} 条；{len(merged)} 条吞掉了后面的行")
# 自己的文件这样少了几条，多半是无心的，所以 吞得多，load_messages 就停下。

# %% 数一数：两类相差很多
counts = Counter(label for label, _ in rows)
print(f"\n{dict(counts)}")
# 不看内容，一律答 ham，准确率就有这么高。拿不平衡的数据训练，模型最先学会的正是这一招。
print(f"一律答 ham 的准确率　{counts['ham'] / len(rows):.2%}")


# %% 平衡：正常的随机抽，抽到与垃圾的一样多
# 办法不止这一种（也可以给垃圾短信更大的权重），书上选了最简单的：多的扔掉，代价是四千多条正常短信没有用上。
def create_balanced_dataset(rows):
    """让两类一样多：多的那一类只留一部分，少的那一类全要。

    参数:
        rows (list[tuple[str, str]]): 全部短信

    返回:
        list[tuple[str, str]]: 平衡之后的短信，正常的在前，垃圾的在后

    异常:
        ValueError: 只有一类，没法学着分辨

    出处: 原书 6.2 节
    """
    ham = [row for row in rows if row[0] == "ham"]
    spam = [row for row in rows if row[0] == "spam"]
    if not ham or not spam:
        raise ValueError(f"数据里有 {len(ham)} 条 ham、{len(spam)} 条 spam，两类都要有才能学着分辨")
    n = min(len(ham), len(spam))
    # 书上是 pandas 的 ham.sample(n, random_state=123)。它里面就是打乱序号、取前 n 个，用的是 NumPy 的旧式发生器 RandomState；
    # 换成新式的 default_rng(123)，抽出来的就不是书上那些短信了。
    shuffled = np.random.RandomState(123).permutation(len(ham))
    return [ham[i] for i in shuffled[:n]] + spam[:n]


balanced = create_balanced_dataset(rows)
print(f"\n平衡之后 {dict(Counter(label for label, _ in balanced))}")
print(f"抽中的头 5 条正常短信，在文件里是第 {[rows.index(row) for row in balanced[:5]]} 条（从 0 数）")


# %% 标签换成数字，打乱，切成三份
def random_split(rows, train_frac, validation_frac):
    """打乱，再切成训练集、验证集、测试集。

    参数:
        rows (list[tuple]): 短信，两类还分在前后
        train_frac (float): 训练集占多少
        validation_frac (float): 验证集占多少；剩下的是测试集

    返回:
        tuple[list, list, list]: 训练集、验证集、测试集

    出处: 原书 6.2 节
    """
    # 不打乱的话，测试集会全是垃圾短信。书上是 df.sample(frac=1, random_state=123)，与上面同一个道理。
    rows = [rows[i] for i in np.random.RandomState(123).permutation(len(rows))]
    train_end = int(len(rows) * train_frac)
    validation_end = train_end + int(len(rows) * validation_frac)
    return rows[:train_end], rows[train_end:validation_end], rows[validation_end:]


numbered = [({"ham": 0, "spam": 1}[label], text) for label, text in balanced]  # 交叉熵要的是类别的编号
train, validation, test = random_split(numbered, TRAIN_FRAC, VALIDATION_FRAC)
print(f"\n训练 {len(train)} 条，验证 {len(validation)} 条，测试 {len(test)} 条")
for name, part in [("训练", train), ("验证", validation), ("测试", test)]:
    print(f"  {name}集里 spam 占 {sum(label for label, _ in part) / len(part):.1%}")
# 训练集用来更新权重；验证集用来挑学习率、轮数这些人定的数；测试集只在最后用一次。
# 反复看着测试集改，等于把考卷当练习册：分数好看，换一份卷子就不灵了。

# %% 泄漏：测试集里有没有训练时见过的？
seen = {text for _, text in train}
leaked = [text for _, text in test if text in seen]
print(f"测试集的 {len(test)} 条里，有 {len(leaked)} 条与训练集里的一字不差")
# 原书的数据里，群发的短信会重复出现：300 条测试短信，37 条是训练时见过的原题，书上的测试准确率因此略微偏高。
# 一字不差只是最明显的一种：只换了号码、多了个感叹号的，背下来一样管用。setup/check_data.py 照同样的切法，把近似的也数出来：
# 原书的 300 条里，另有 30 条与训练集的某一条八成以上相同。自己的数据，切分之前就该去重。
# 自带的数据生成时查过重，怎样切分都没有近似的两条落在两边，办法写在 setup/data/make_messages.py 开头。


# %% 写成三个 CSV，下一节的 SpamDataset 从这里读
def to_csv(rows, csv_file):
    """写成 CSV，第一行是列名，与 pandas 的 to_csv(index=None) 写出的相同。

    参数:
        rows (list[tuple[int, str]]): 每条是（标签，正文），标签 1 是垃圾
        csv_file (Path): 写到哪里；文件夹没有就新建
    """
    csv_file.parent.mkdir(exist_ok=True)
    part = csv_file.with_suffix(f".{os.getpid()}")  # 先写在旁边，写完再改名：别的脚本读到的总是完整的一份
    try:
        with open(part, "w", encoding="utf-8", newline="") as file:  # newline=""：换行由 csv 模块来管
            csv.writer(file, lineterminator="\n").writerows([("Label", "Text"), *rows])
        os.replace(part, csv_file)
    finally:
        part.unlink(missing_ok=True)  # 改了名就没有它了；还在，说明没有写完（磁盘满了），不留下


for name, part in [("train", train), ("validation", validation), ("test", test)]:
    to_csv(part, OUTPUTS / f"{name}.csv")
print(f"\n写好了 {OUTPUTS} 里的 train.csv、validation.csv、test.csv")


# %% 这个数字对吗？
# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion

print("\n这个数字对吗？")
confirm("按引号的规矩读出 2 条，不管引号读出 3 条", (len(quoted), len(unquoted)) == (2, 3), "csv 的 quoting 参数改过")
halves = Counter(label for label, _ in balanced)
confirm("平衡之后，两类一样多", halves["ham"] == halves["spam"] > 0, "抽样的个数写错了")
confirm("三份合起来，不重不漏", Counter(train + validation + test) == Counter(numbered), "切分的起止重叠了，或漏了一条")
with open(OUTPUTS / "test.csv", encoding="utf-8", newline="") as file:
    back = [(int(row["Label"]), row["Text"]) for row in csv.DictReader(file)]
confirm("test.csv 读回来，一字不差", back == test, "写的时候漏了列名，或没有写 newline")
if path.stat().st_size == 477_907:  # 大小与原书的那份相同，才核对书上的数
    confirm("与书上相同：5572 条，ham 4825、spam 747", counts == {"ham": 4825, "spam": 747}, "读的时候关掉了引号")
    sizes = [len(train), len(validation), len(test)]
    confirm("与书上相同：训练 1045、验证 149、测试 300", sizes == [1045, 149, 300], "切分的比例不同")

# %% 动手改
# 1. 在 load_messages 的 delimiter="\t" 后面加上 quoting=csv.QUOTE_NONE，用原书的数据再运行：5574 条，抽出来的就不是书上那些了。
#    （自带的数据一条也不会少：它的引号是成对写的。只是正文里的引号会多出几个来。）
# 2. 不平衡，直接把 rows 交给 numbered 那一行：测试集里 spam 占多少？一律答 ham 能得多少分？
#    （用原书的数据，最后一条自查会变成 ✗）
# 3. 把 random_split 里打乱的那一行去掉：三份里 spam 各占多少？
