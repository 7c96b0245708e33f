"""第 7 章 · 7.3 节　把长短不一的样本凑成批：填充、错开一位、-100

读完你应该能回答：
    1. 为什么每批各填各的，而不是都填到全部数据里最长的那么长？
    2. 每条末尾为什么一定要留一个 50256？少了它，模型会怎样？
    3. -100 是怎样让一个位置"不算损失"的？换成别的数行不行？

运行：
    python ch07/main/example_02_collate.py
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 2 秒，0.3 GB（2 核 CPU）

形状记号（全书统一）：b 批大小　t 序列长度（词元数）　n 个数
"""

import os
import sys
from pathlib import Path

import tiktoken
import torch
from torch.utils.data import Dataset

# 改这里：两条长短不同的指令数据
ENTRIES = [
    {"instruction": "What is the opposite of hot?", "input": "", "output": "Cold."},
    {
        "instruction": "Sort the following list in alphabetical order.",
        "input": "Zebra, Elephant, Crocodile",
        "output": "Crocodile, Elephant, Zebra",
    },
]


# region 沿用 ch07/main: format_input
def format_input(entry):
    """一条数据 → Alpaca 格式的提示词，到回答之前为止。（详解见 ch07/main/example_01_dataset_and_prompt.py）"""
    instruction_text = (
        f"Below is an instruction that describes a task. "
        f"Write a response that appropriately completes the request."
        f"\n\n### Instruction:\n{entry['instruction']}"
    )
    input_text = f"\n\n### Input:\n{entry['input']}" if entry["input"] else ""
    return instruction_text + input_text


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

os.environ["TIKTOKEN_CACHE_DIR"] = str(find_data("tiktoken"))  # GPT-2 的词表由 setup/run.sh 放好，不联网


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


# %% 7.3　① 分词：一条数据 → 一列词元编号
class InstructionDataset(Dataset):
    """指令数据集：提示词接上回答，整段变成词元编号。长短不一，凑批时再填充。

    参数:
        data (list[dict]): 指令数据
        tokenizer (tiktoken.Encoding): 分词器

    出处: 原书 7.3 节
    """

    def __init__(self, data, tokenizer):
        self.data = data
        # 提前分好词，免得每一轮都重来。提示词和回答在同一段里：对模型来说只是一段文本，它照样逐个预测下一个词元；
        # 读得多了，看到 "### Response:" 就知道该回答了。
        self.encoded_texts = []
        for entry in data:
            instruction_plus_input = format_input(entry)
            response_text = f"\n\n### Response:\n{entry['output']}"
            full_text = instruction_plus_input + response_text
            self.encoded_texts.append(tokenizer.encode(full_text))

    def __getitem__(self, index):
        """第 index 条的词元编号，一个普通的列表：长短不一，还不能变成张量。"""
        return self.encoded_texts[index]

    def __len__(self):
        """一共几条。"""
        return len(self.data)


tokenizer = tiktoken.get_encoding("gpt2")
dataset = InstructionDataset(ENTRIES, tokenizer)
print(f"【7.3】两条样本各有 {[len(ids) for ids in dataset]} 个词元，叠不成一个张量，要先填充（padding）")

# 用什么填？GPT-2 没有专门的填充词元，借用结束词元 <|endoftext|>：它本来的意思是"一篇到此为止"。
print("<|endoftext|> 的编号", tokenizer.encode("<|endoftext|>", allowed_special={"<|endoftext|>"}))

# %% ② 第一稿：填充
# 凑批的函数（collate function）由 DataLoader 调用：给它一批样本，它还一批张量。先用三条假样本看清楚。
inputs_1 = [0, 1, 2, 3, 4]
inputs_2 = [5, 6]
inputs_3 = [7, 8, 9]
batch = (inputs_1, inputs_2, inputs_3)


def custom_collate_draft_1(batch, pad_token_id=50256, device="cpu"):
    """第一稿：只做输入，填到这一批里最长的那么长。

    参数:
        batch (list[list[int]]): 几条样本
        pad_token_id (int): 用什么填
        device (str): 放到哪个设备上

    返回:
        Tensor: 输入，(b, t)

    出处: 原书 7.3 节
    """
    # 只填到这一批里最长的。每批不必一样长，短的批就短，省下许多白算的填充。
    batch_max_length = max(len(item) + 1 for item in batch)  # 多留一格，给结束词元
    inputs_lst = []
    for item in batch:
        new_item = item.copy()
        new_item += [pad_token_id]  # 每条都加一个结束词元
        padded = new_item + [pad_token_id] * (batch_max_length - len(new_item))
        inputs = torch.tensor(padded[:-1])  # (t,)　去掉刚才多留的那一格；第二稿里目标用得着它
        inputs_lst.append(inputs)
    return torch.stack(inputs_lst).to(device)  # (b, t)


draft_1 = custom_collate_draft_1(batch)
print(f"\n第一稿的输入　{tuple(draft_1.shape)}　(b, t)\n{draft_1}")


# %% ③ 第二稿：目标是输入错开一位
def custom_collate_draft_2(batch, pad_token_id=50256, device="cpu"):
    """第二稿：输入和目标，目标是输入右移一位。

    参数:
        batch (list[list[int]]): 几条样本
        pad_token_id (int): 用什么填
        device (str): 放到哪个设备上

    返回:
        tuple[Tensor, Tensor]: 输入和目标，都是 (b, t)

    出处: 原书 7.3 节
    """
    batch_max_length = max(len(item) + 1 for item in batch)
    inputs_lst, targets_lst = [], []
    for item in batch:
        new_item = item.copy()
        new_item += [pad_token_id]
        padded = new_item + [pad_token_id] * (batch_max_length - len(new_item))
        inputs = torch.tensor(padded[:-1])  # (t,)　去掉最后一个
        targets = torch.tensor(padded[1:])  # (t,)　去掉第一个：第 i 个位置的目标，是第 i + 1 个词元
        inputs_lst.append(inputs)
        targets_lst.append(targets)
    return torch.stack(inputs_lst).to(device), torch.stack(targets_lst).to(device)  # (b, t)，(b, t)


inputs, targets = custom_collate_draft_2(batch)
print(f"\n第二稿的输入\n{inputs}\n第二稿的目标\n{targets}")
# 看第一条：最后一个目标是 50256。读完 0 1 2 3 4，正确答案是"到此为止"：模型就是这样学会停下来的。
# 再看第二条：6 后面有 4 个 50256。第一个有用，后面 3 个是"结束之后还是结束"，学了没用，却占了大半的损失。

# %% ④ 多余的目标换成 -100，先用一行看清楚
row = targets[1].clone()  # (t,)
mask = row == 50256
indices = torch.nonzero(mask).squeeze()  # (n,)　n 是 50256 的个数
print(f"\n第二条的目标　　{row.tolist()}")
print(f"50256 在第几格　{indices.tolist()}：第一个留着，其余的换掉")
row[indices[1:]] = -100
print(f"换好之后　　　　{row.tolist()}")


# %% ⑤ 定稿：三步合在一起，再加上截断
def custom_collate_fn(batch, pad_token_id=50256, ignore_index=-100, allowed_max_length=None, device="cpu"):
    """把长短不一的几条凑成一批，同时做好目标。

    参数:
        batch (list[list[int]]): 几条样本的词元编号
        pad_token_id (int): 结束和填充都用它，50256 就是 <|endoftext|>
        ignore_index (int): 目标里填它的位置不算损失；-100 是 cross_entropy 的默认值
        allowed_max_length (int 或 None): 最长多少个词元，超出的截掉；不能超过模型的上下文长度
        device (str 或 torch.device): 放到哪个设备上

    形状:
        输入和目标都是 (b, t)，t 是这一批里最长的那条有几个词元

    返回:
        tuple[Tensor, Tensor]: 输入和目标

    出处: 原书 7.3 节
    """
    batch_max_length = max(len(item) + 1 for item in batch)
    inputs_lst, targets_lst = [], []
    for item in batch:
        # ① 末尾加一个结束词元，再填充。先 copy：+= 会改动原来的列表，不复制，每过一轮样本就多出一个结束词元。
        new_item = item.copy()
        new_item += [pad_token_id]
        padded = new_item + [pad_token_id] * (batch_max_length - len(new_item))
        # ② 错开一位：每个位置的目标是它右边的词元，与预训练完全一样。
        inputs = torch.tensor(padded[:-1])  # (t,)
        targets = torch.tensor(padded[1:])  # (t,)
        # ③ 目标里第一个 50256 留着，教模型"说完就停"；后面的只是填充，换成 -100，不算损失。
        mask = targets == pad_token_id
        indices = torch.nonzero(mask).squeeze()  # (n,) 或 ()　50256 的位置；只有一个时没有维度，不能再取 [1:]
        if indices.numel() > 1:
            targets[indices[1:]] = ignore_index
        # ④ 太长的截掉尾巴。结束词元也一起截掉，这条样本就不教"停"了。
        if allowed_max_length is not None:
            inputs = inputs[:allowed_max_length]
            targets = targets[:allowed_max_length]
        inputs_lst.append(inputs)
        targets_lst.append(targets)
    return torch.stack(inputs_lst).to(device), torch.stack(targets_lst).to(device)  # (b, t)，(b, t)


inputs, targets = custom_collate_fn(batch)
print(f"\n定稿的输入\n{inputs}\n定稿的目标\n{targets}")
# 输入里的 50256 不用换。因果掩码下，前面的词元看不到后面的填充；填充自己的位置又不算损失，所以不碍事。

# 真的两条凑成一批，短的那条后面都是填充：
real_inputs, real_targets = custom_collate_fn(list(dataset))
ignored = (real_targets == -100).sum(dim=1)  # (b,)
print(f"\n开头的两条样本凑成一批　{tuple(real_inputs.shape)}　(b, t)；不算损失的位置，每条 {ignored.tolist()} 个")

# %% ⑥ 为什么是 -100：看交叉熵怎样对待它
# 一道二选一的题，每行 logits 是两个选项的分数，目标是正确选项的编号。两个位置的平均损失：
logits_1 = torch.tensor([[-1.0, 1.0], [-0.5, 1.5]])  # (2, 2)
targets_1 = torch.tensor([0, 1])
loss_1 = torch.nn.functional.cross_entropy(logits_1, targets_1)
print(f"\n两个位置　　　　　　　{loss_1:.4f}")

# 再加一个位置，平均损失当然会变：
logits_2 = torch.tensor([[-1.0, 1.0], [-0.5, 1.5], [-0.5, 1.5]])  # (3, 2)
targets_2 = torch.tensor([0, 1, 1])
loss_2 = torch.nn.functional.cross_entropy(logits_2, targets_2)
print(f"三个位置　　　　　　　{loss_2:.4f}")

# 把第三个目标换成 -100，损失又变回去了，好像那个位置不存在：它既不进分子（损失之和），也不进分母（位置的个数）。
targets_3 = torch.tensor([0, 1, -100])
loss_3 = torch.nn.functional.cross_entropy(logits_2, targets_3)
print(f"第三个目标是 -100　　 {loss_3:.4f}　与两个位置的{'相同' if loss_1 == loss_3 else '不同'}")

# -100 只是约定：cross_entropy(…, ignore_index=-100) 的默认值。词元编号没有负数，所以不会误伤。
# 那为什么不把 ignore_index 设成 50256，省得换？因为那样第一个 50256 也被忽略，模型永远学不会停。
# 还可以再进一步：提示词的目标也换成 -100，只让模型学回答。这样好不好，练习 7.2 量了一次。

# %% 这个数字对吗？
print("\n这个数字对吗？")
book_targets = [[1, 2, 3, 4, 50256], [6, 50256, -100, -100, -100], [8, 9, 50256, -100, -100]]
confirm("定稿的目标与书上相同", targets.tolist() == book_targets, "第一个 50256 也换掉了，或没有错开一位")
confirm("输入与第一稿相同：-100 只出现在目标里", torch.equal(inputs, draft_1), "把输入里的 50256 也换了；-100 查不了嵌入表")
losses = [round(loss.item(), 4) for loss in (loss_1, loss_2, loss_3)]
confirm("损失与书上相同：1.1269、0.7936、1.1269", losses == [1.1269, 0.7936, 1.1269], "logits 抄错了")
confirm("样本本身没有被改动", batch == ([0, 1, 2, 3, 4], [5, 6], [7, 8, 9]), "忘了 item.copy()，每一轮都会多出一个 50256")
confirm("每条恰好有一个目标是 50256", (targets == 50256).sum(dim=1).tolist() == [1, 1, 1], "indices[1:] 写成了 indices")

# %% 动手改
# 1. 把定稿里的 indices[1:] 改成 indices，看哪几条自查变成 ✗，想想训练出来的模型会怎样。
# 2. 打印 custom_collate_fn(batch, allowed_max_length=3)：哪几条的结束词元被截掉了？
# 3. 在 ⑥ 里把 -100 换成 -1：报错说目标越界。再给 cross_entropy 加上 ignore_index=-1，又好了。
