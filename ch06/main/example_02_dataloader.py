"""第 6 章 · 6.3 节　创建数据加载器：长短不一的短信，怎样凑成一批

读完你应该能回答：
    1. 一批里的短信为什么必须一样长？截断和填充，各丢掉了什么？
    2. 填充词元为什么用 50256？它会不会被当成内容？
    3. 验证集、测试集为什么要填充到训练集的最长，而不是自己的最长？

运行：
    python ch06/main/example_02_dataloader.py
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 2 秒，0.3 GB（2 核 CPU）

形状记号（全书统一）：b 批大小　t 序列长度（token 数）　n 样本数
"""

import csv
import io
import os
import sys
from pathlib import Path

import numpy as np
import tiktoken
import torch
from torch.utils.data import DataLoader, Dataset

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

os.environ["TIKTOKEN_CACHE_DIR"] = str(find_data("tiktoken"))  # GPT-2 的词表由 setup/run.sh 放好，不联网


# region 沿用 ch06/main/gpt_class_finetune.py: load_messages, create_balanced_dataset, random_split, SpamDataset
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


class SpamDataset(Dataset):
    """短信的数据集：先分好词，再一律填充到同样长。（详解见 ch06/main/gpt_class_finetune.py）"""

    def __init__(self, rows, tokenizer, max_length=None, pad_token_id=50256):
        self.labels = [LABELS[label] for label, _ in rows]
        self.encoded_texts = [tokenizer.encode(text, disallowed_special=()) for _, text in rows]
        if max_length is None:
            self.max_length = self._longest_encoded_length()
        else:
            self.max_length = max_length
            self.encoded_texts = [encoded_text[: self.max_length] for encoded_text in self.encoded_texts]
        self.encoded_texts = [encoded_text + [pad_token_id] * (self.max_length - len(encoded_text)) for encoded_text in self.encoded_texts]

    def __getitem__(self, index):
        return torch.tensor(self.encoded_texts[index], dtype=torch.long), torch.tensor(self.labels[index], dtype=torch.long)

    def __len__(self):
        return len(self.labels)

    def _longest_encoded_length(self):
        return max(len(encoded_text) for encoded_text in self.encoded_texts)


# endregion


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion

# %% 6.3.0　接着上一节：切好的三份
path = find_data("SMSSpamCollection.tsv", "messages.tsv")
train_rows, val_rows, test_rows = random_split(create_balanced_dataset(load_messages(path)), 0.7, 0.1)
tokenizer = tiktoken.get_encoding("gpt2")
print(f"【6.3】{path}")

# %% 6.3.1　每条短信的词元数都不一样
lengths = [len(tokenizer.encode(text)) for _, text in train_rows]
print(f"【6.3】训练集里，最短 {min(lengths)} 个词元，最长 {max(lengths)}，平均 {sum(lengths) / len(lengths):.1f}")
# 张量是整齐的方块，一批里的每一行必须一样长。两条路：
#   截断到最短：计算省，但别的短信都只剩开头几个词，多半看不出是什么。
#   填充到最长：一个字不丢，代价是短的后面跟着一长串没有意义的词元，白白计算。书上选这一条。

# %% 填充词元：借用 <|endoftext|>
print("【6.3】<|endoftext|> 的编号　", tokenizer.encode("<|endoftext|>", allowed_special={"<|endoftext|>"}))
# GPT-2 没有专门的填充词元。50256 在预训练时是文章之间的分隔，意思正是"到此为止"，拿来填充最不容易被误会。
# 我们并没有遮住它：最后一个位置会看到它们，微调时模型得自己学会不理睬。
example = tokenizer.encode("Do you have time")
print("【6.3】填充到 8 个　　　　　", example + [50256] * (8 - len(example)))

# %% 6.3.2　数据集
train_dataset = SpamDataset(train_rows, tokenizer, max_length=None)
print(f"\n【6.3】训练集填充到 max_length = {train_dataset.max_length}")
# 三份都填充到训练集的最长：模型总在同一个位置作答。验证集、测试集里更长的会被截断。
val_dataset = SpamDataset(val_rows, tokenizer, max_length=train_dataset.max_length)
test_dataset = SpamDataset(test_rows, tokenizer, max_length=train_dataset.max_length)
input_ids, label = train_dataset[0]
print(f"【6.3】第 1 条　{tuple(input_ids.shape)}　(t,)　标签 {label.item()}　{train_rows[0][1]!r}")
print(input_ids)
wasted = 1 - sum(lengths) / (len(lengths) * train_dataset.max_length)
print(f"【6.3】训练集里 {wasted:.0%} 是填充词元")

# %% 6.3.3　数据加载器
torch.manual_seed(123)  # 打乱的次序由它决定
train_loader = DataLoader(train_dataset, batch_size=8, shuffle=True, num_workers=0, drop_last=True)
# 验证和测试不打乱（次序不影响平均），也不丢最后一批（每条都要考）。
val_loader = DataLoader(val_dataset, batch_size=8, num_workers=0, drop_last=False)
test_loader = DataLoader(test_dataset, batch_size=8, num_workers=0, drop_last=False)
for input_batch, target_batch in train_loader:
    pass
print(f"\n【6.3】最后一批　输入 {tuple(input_batch.shape)}　(b, t)　标签 {tuple(target_batch.shape)}　(b,)　{target_batch.tolist()}")
print(f"【6.3】{len(train_loader)} 批训练，{len(val_loader)} 批验证，{len(test_loader)} 批测试")
# 与预训练比一比：那里的目标是"输入右移一位"，形状 (b, t)，每个位置一道题；这里一条短信一个标签，形状 (b,)，一条一道题。

# %% 这个数字对吗？
print("\n这个数字对吗？")
sizes = (len(train_loader), len(val_loader), len(test_loader))
confirm("每个样本都一样长", {len(train_dataset[i][0]) for i in range(len(train_dataset))} == {train_dataset.max_length}, "忘了填充")
confirm("训练集没有截断：去掉填充，还原成原来的短信", tokenizer.decode([i for i in input_ids.tolist() if i != 50256]) == train_rows[0][1], "截断写在了填充后面")
confirm("训练的批数 = 条数 // 8，多出来的丢掉", sizes[0] == len(train_rows) // 8, "drop_last 没有开")
confirm("验证、测试的批数 = 条数 / 8，往上取整", sizes[1:] == (-(-len(val_rows) // 8), -(-len(test_rows) // 8)), "drop_last 开错了地方")
if path.stat().st_size == 477_907:  # 大小与原书的那份相同，才核对书上的数
    confirm("与书上相同：最长 120 个词元", train_dataset.max_length == 120, "切分或分词与书上不同")
    confirm("与书上相同：每批 (8, 120)，130 / 19 / 38 批", tuple(input_batch.shape) == (8, 120) and sizes == (130, 19, 38), "批大小不是 8")

# %% 动手改
# 1. 把 train_dataset 的 max_length 改成 10，再看第 1 条：还看得出它是不是垃圾短信吗？（第二条自查会变成 ✗）
# 2. 把 pad_token_id 改成 0（它是 "!"）：填充成了一长串感叹号，而垃圾短信正爱用感叹号。（第二条自查也会变成 ✗）
# 3. 把三处 batch_size=8 改成 1：一批只有一条，还需要填充吗？（核对批数的两条自查会变成 ✗）
