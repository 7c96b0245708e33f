"""第 6 章 · 6.3 节　创建数据加载器：长短不一的短信，怎样凑成一批

读完你应该能回答：
    1. 一批里的短信为什么必须一样长？截断和填充，各丢掉了什么？
    2. 填充词元为什么用 50256？模型看得见它吗？
    3. 验证集、测试集为什么要填充到训练集的最长，而不是自己的最长？

运行：
    python ch06/main/example_02_dataloader.py
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 2 秒，0.3 GB（2 核 CPU）

形状记号（全书统一）：b 批大小　t 序列长度（词元数）　n 样本数
"""

import csv
import os
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import tiktoken
import torch
import zhplot  # noqa: F401　导入它，图上就能写中文
from torch.utils.data import DataLoader, Dataset

# 改这里
BATCH_SIZE = 8
MAX_LENGTH = None  # 训练集填充到多长；None：最长的那条有多长，就填充到多长
PAD_TOKEN_ID = 50256  # 填充词元的编号


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


# region 沿用 ch06/main: load_messages, create_balanced_dataset, random_split, to_csv
def load_messages(path):
    """读短信：每行是「标签<制表符>正文」，标签是 ham（正常）或 spam（垃圾）。（详解见 ch06/main/example_01_data.py）"""
    advice = f"；哪里不对、怎样转换：python setup/check_data.py {path}"
    try:
        with open(path, encoding="utf-8-sig") as file:
            rows = [tuple(row) for row in csv.reader(file, delimiter="\t") if row]
    except (OSError, UnicodeDecodeError, csv.Error):
        raise ValueError(f"读不了 {path}：没有这个文件，或不是 UTF-8 编码的文本，或引号没有配对{advice}") from None
    for number, row in enumerate(rows, start=1):
        if len(row) != 2 or row[0] not in ("ham", "spam") or not row[1].strip():
            found = "\t".join(row)[:40]
            raise ValueError(f"{path} 的第 {number} 条是 {found!r}，应为「ham 或 spam<制表符>正文」{advice}")
        if (swallowed := row[1].count("\nham\t") + row[1].count("\nspam\t")) > 2:
            raise ValueError(f"{path} 的第 {number} 条，引号没有配对，吞掉了后面 {swallowed} 行{advice}")
    ham = sum(label == "ham" for label, _ in rows)
    if not 0 < ham < len(rows):
        raise ValueError(f"{path} 里有 {ham} 条 ham、{len(rows) - ham} 条 spam，两类都要有才能学着分辨{advice}")
    return rows


def create_balanced_dataset(rows):
    """让两类一样多：多的那一类只留一部分，少的那一类全要。（详解见 ch06/main/example_01_data.py）"""
    ham = [row for row in rows if row[0] == "ham"]
    spam = [row for row in rows if row[0] == "spam"]
    if not ham or not spam:
        raise ValueError(f"数据里有 {len(ham)} 条 ham、{len(spam)} 条 spam，两类都要有才能学着分辨")
    n = min(len(ham), len(spam))
    shuffled = np.random.RandomState(123).permutation(len(ham))
    return [ham[i] for i in shuffled[:n]] + spam[:n]


def random_split(rows, train_frac, validation_frac):
    """打乱，再切成训练集、验证集、测试集。（详解见 ch06/main/example_01_data.py）"""
    rows = [rows[i] for i in np.random.RandomState(123).permutation(len(rows))]
    train_end = int(len(rows) * train_frac)
    validation_end = train_end + int(len(rows) * validation_frac)
    return rows[:train_end], rows[train_end:validation_end], rows[validation_end:]


def to_csv(rows, csv_file):
    """写成 CSV，第一行是列名，与 pandas 的 to_csv(index=None) 写出的相同。（详解见 ch06/main/example_01_data.py）"""
    csv_file.parent.mkdir(exist_ok=True)
    part = csv_file.with_suffix(f".{os.getpid()}")
    try:
        with open(part, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("Label", "Text"), *rows])
        os.replace(part, csv_file)
    finally:
        part.unlink(missing_ok=True)


# endregion

here = Path(__file__ if "__file__" in globals() else "x").resolve()  # 笔记本里没有 __file__，就从当前文件夹往上找
OUTPUTS = next((folder / "ch06" for folder in here.parents if (folder / "ch06").is_dir()), Path()) / "outputs"

# %% 接着 6.2 节：三个 CSV
path = find_data("SMSSpamCollection.tsv", "messages.tsv")
numbered = [({"ham": 0, "spam": 1}[label], text) for label, text in create_balanced_dataset(load_messages(path))]
for name, part in zip(("train", "validation", "test"), random_split(numbered, 0.7, 0.1)):
    to_csv(part, OUTPUTS / f"{name}.csv")
print(f"【6.3】{path}")

# %% 每条短信的词元数都不一样
tokenizer = tiktoken.get_encoding("gpt2")
with open(OUTPUTS / "train.csv", encoding="utf-8", newline="") as file:
    texts = [row["Text"] for row in csv.DictReader(file)]
lengths = [len(tokenizer.encode(text, disallowed_special=())) for text in texts]
print(f"训练集里，最短 {min(lengths)} 个词元，最长 {max(lengths)}，平均 {sum(lengths) / len(lengths):.1f}")
# 自己的短信有多长，setup/check_data.py 会画出来：横轴每格翻一倍，看得清大多数在哪里、有几条超过了上下文长度。
# 张量是整齐的方块，一批里的每一行必须一样长。两条路：
#   截断到最短：计算省，但别的短信都只剩开头几个词，多半看不出是什么。
#   填充到最长：一个字不丢，代价是短的后面跟着一长串没有意义的词元，白白计算。书上选这一条。
figure, axis = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
axis.hist(lengths, bins=range(0, max(lengths) + 2))
axis.axvline(max(lengths), color="C1", linestyle="-.", label=f"一律填充到这么长：{max(lengths)}")
axis.set_xlabel("词元数")
axis.set_ylabel("短信条数")
axis.legend()
figure.savefig(OUTPUTS / "message-lengths.png", dpi=150)
plt.close(figure)
print(f"长短的分布　{OUTPUTS / 'message-lengths.png'}")

# %% 填充词元：借用 <|endoftext|>
print("\n<|endoftext|> 的编号　", tokenizer.encode("<|endoftext|>", allowed_special={"<|endoftext|>"}))
# GPT-2 没有专门的填充词元。50256 在预训练时是文章之间的分隔，意思正是"到此为止"，拿来填充最不容易被误会。
# 我们并没有遮住它：它照样占一个位置，也会看到左边的短信。6.5 节要取最后一个位置作答，那里几乎总是它。
example = tokenizer.encode("Do you have time")
print("填充到 8 个　　　　　　", example + [PAD_TOKEN_ID] * (8 - len(example)))


# %% 数据集
class SpamDataset(Dataset):
    """短信的数据集：先分好词，再一律填充到同样长。

    参数:
        csv_file (str 或 Path): 6.2 节写的 CSV，两列：Label（0 或 1）和 Text
        tokenizer (tiktoken.Encoding): 分词器
        max_length (int 或 None): 填充到多长，更长的截断；None 表示最长的那条有多长就多长
        pad_token_id (int): 填充词元的编号

    形状:
        每个样本是 ((t,), ())，t 就是 max_length

    出处: 原书 6.3 节，那里用 pandas.read_csv 读
    """

    def __init__(self, csv_file, tokenizer, max_length=None, pad_token_id=50256):
        with open(csv_file, encoding="utf-8", newline="") as file:
            self.data = list(csv.DictReader(file))

        # ① 先全部分好词，训练时反复取用，不必每次再分。
        #    disallowed_special=()：正文里万一写着 "<|endoftext|>"，当普通的字处理，不要报错。
        self.encoded_texts = [tokenizer.encode(row["Text"], disallowed_special=()) for row in self.data]

        # ② 定下长度。自己不定，就照最长的来，一条也不截断；别人定好了，就照它截断。
        if max_length is None:
            self.max_length = self._longest_encoded_length()
        else:
            self.max_length = max_length
            self.encoded_texts = [encoded_text[: self.max_length] for encoded_text in self.encoded_texts]

        # ③ 在末尾填充。填在前面的话，每条短信的第一个词都换了位置，位置嵌入就对不上预训练时的习惯。
        self.encoded_texts = [
            encoded_text + [pad_token_id] * (self.max_length - len(encoded_text)) for encoded_text in self.encoded_texts
        ]

    def __getitem__(self, index):
        """第 index 个样本：词元编号 (t,) 和标签 ()。CSV 里读出来的都是文字，标签要变回整数。"""
        return (
            torch.tensor(self.encoded_texts[index], dtype=torch.long),
            torch.tensor(int(self.data[index]["Label"]), dtype=torch.long),
        )

    def __len__(self):
        """样本数 n。"""
        return len(self.data)

    def _longest_encoded_length(self):
        """最长的那条有几个词元。"""
        return max(len(encoded_text) for encoded_text in self.encoded_texts)


train_dataset = SpamDataset(OUTPUTS / "train.csv", tokenizer, max_length=MAX_LENGTH, pad_token_id=PAD_TOKEN_ID)
print(f"\n训练集填充到 max_length = {train_dataset.max_length}")
# 三份都填充到训练集的最长：模型总在同一个位置作答。验证集、测试集里更长的会被截断。
val_dataset = SpamDataset(OUTPUTS / "validation.csv", tokenizer, train_dataset.max_length, PAD_TOKEN_ID)
test_dataset = SpamDataset(OUTPUTS / "test.csv", tokenizer, train_dataset.max_length, PAD_TOKEN_ID)
input_ids, label = train_dataset[0]
print(f"第 1 条　{tuple(input_ids.shape)}　(t,)　标签 {label.item()}　{texts[0]!r}")
kept = [i for i in input_ids.tolist() if i != PAD_TOKEN_ID]
print(f"  {kept}，后面是 {len(input_ids) - len(kept)} 个 {PAD_TOKEN_ID}")
padding = sum(row.count(PAD_TOKEN_ID) for row in train_dataset.encoded_texts) / (len(train_dataset) * train_dataset.max_length)
last = sum(row[-1] == PAD_TOKEN_ID for row in train_dataset.encoded_texts)
print(f"训练集里 {padding:.0%} 是填充词元；{len(train_dataset)} 条里有 {last} 条，最后一个位置是它")

# %% 数据加载器
torch.manual_seed(123)  # 打乱的次序由它决定
train_loader = DataLoader(train_dataset, batch_size=BATCH_SIZE, shuffle=True, num_workers=0, drop_last=True)
# 验证和测试不打乱（次序不影响平均），也不丢最后一批（每条都要考）。
val_loader = DataLoader(val_dataset, batch_size=BATCH_SIZE, num_workers=0, drop_last=False)
test_loader = DataLoader(test_dataset, batch_size=BATCH_SIZE, num_workers=0, drop_last=False)
for input_batch, target_batch in train_loader:
    pass
print(f"\n最后一批　输入 {tuple(input_batch.shape)}　(b, t)　标签 {tuple(target_batch.shape)}　(b,)　{target_batch.tolist()}")
print(f"{len(train_loader)} 批训练，{len(val_loader)} 批验证，{len(test_loader)} 批测试")
# 与预训练比一比：那里的目标是"输入右移一位"，形状 (b, t)，每个位置一道题；这里一条短信一个标签，形状 (b,)，一条一道题。


# %% 这个数字对吗？
# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion

print("\n这个数字对吗？")
sizes = (len(train_loader), len(val_loader), len(test_loader))
together = [len(row) for dataset in (train_dataset, val_dataset, test_dataset) for row in dataset.encoded_texts]
confirm("三份的每个样本都一样长", set(together) == {train_dataset.max_length}, "忘了填充，或忘了截断")
restored = [tokenizer.decode([i for i in row if i != 50256]) for row in train_dataset.encoded_texts]
confirm("训练集没有截断：去掉填充，每一条都还原成原来的短信", restored == texts, "截断写在了填充后面")
confirm("训练的批数 = 条数 // 批大小，凑不满的丢掉", sizes[0] == len(texts) // BATCH_SIZE, "drop_last 没有开")
full = tuple(-(-len(dataset) // BATCH_SIZE) for dataset in (val_dataset, test_dataset))
confirm("验证、测试的批数 = 条数 / 批大小，往上取整", sizes[1:] == full, "drop_last 开错了地方")
if path.stat().st_size == 477_907:  # 大小与原书的那份相同，才核对书上的数
    confirm("与书上相同：最长 120 个词元", train_dataset.max_length == 120, "切分或分词与书上不同")
    confirm("与书上相同：每批 (8, 120)，130 / 19 / 38 批", (*input_batch.shape, *sizes) == (8, 120, 130, 19, 38), "批大小不是 8")

# %% 动手改
# 1. 把 MAX_LENGTH 改成 10，再看第 1 条：还看得出它是不是垃圾短信吗？（第二条自查会变成 ✗）
# 2. 把 PAD_TOKEN_ID 改成 0（它是 "!"）：填充成了一长串感叹号，而垃圾短信正爱用感叹号。（第二条自查也会变成 ✗）
# 3. 把 BATCH_SIZE 改成 1：一批只有一条，还需要填充吗？
