"""第 6 章 · 6.2–6.8 节　分类微调：把会接话的 GPT 改成垃圾短信分类器

读完、敲完这个脚本，你应该能不看书回答：
    1. 换掉输出层之后，为什么只看最后一个位置的分数？那里几乎总是填充词元，凭什么答得出来？
    2. 5,572 条短信为什么要扔掉四千多条正常的？不扔，准确率会怎样骗人？
    3. 我们关心准确率，训练时优化的为什么是交叉熵？

运行：
    python ch06/main/gpt_class_finetune.py                     # 微调第 5 章训练的 mini，分类器和图片写到 ch06/outputs/
    python ch06/main/gpt_class_finetune.py --size 124M         # 书上的那次；先运行 python ch05/main/gpt_download.py
    python ch06/main/gpt_class_finetune.py --classify "You have won a new phone. Call 08081 570211"    # 用微调好的判断一条
    python setup/check_data.py 我的短信.tsv                    # 换成自己的短信（--data）之前，先查一遍；别的格式它能转换
    mini 约 60 秒，0.6 GB（2 核 CPU）；124M 约 1.8 GB，书上在 M3 笔记本的 CPU 上用了 5.3 分钟

形状记号（全书统一）：
    b 批大小　　t 序列长度（词元数）　　d 嵌入维度　　h 头数　　k 每个头的维度（k = d / h）　　V 词表大小　　n 样本数
"""

import argparse
import csv
import os
import sys
import time
from itertools import islice
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import tiktoken
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from torch.utils.data import DataLoader, Dataset, Subset

# 改这里：全是书上的设置
NUM_EPOCHS = 5
LEARNING_RATE = 5e-5  # 书上预训练用 4e-4；这里只要在学好的权重上轻轻改，步子大了，会把学好的冲掉
BATCH_SIZE = 8
EVAL_FREQ, EVAL_ITER = 50, 5  # 每 50 步评估一次，每次各看 5 批
REVIEWS = [  # 训练完，判断这两条；书上 124M 的回答是 spam、not spam
    "You are a winner you have been specially selected to receive $1000 cash or a $2000 award.",
    "Hey, just wanted to check if we're still on for dinner tonight? Let me know!",
]

WEIGHTS = {"mini": "gpt_mini.pth", "124M": "gpt2-124M.pth"}  # 都是第 5 章写出来的
OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"


# region 沿用 ch03/main: MultiHeadAttention
class MultiHeadAttention(nn.Module):
    """带因果掩码的多头自注意力：h 个头并行计算，再拼接、混合。（详解见 ch03/main/example_05_multihead_attention.py）"""

    def __init__(self, d_in, d_out, context_length, dropout, num_heads, qkv_bias=False):
        super().__init__()
        if d_out % num_heads != 0:
            raise ValueError(f"d_out={d_out} 不能被 num_heads={num_heads} 整除，无法平均分给每个头")
        self.d_out = d_out
        self.num_heads = num_heads
        self.head_dim = d_out // num_heads
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.out_proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("mask", torch.triu(torch.ones(context_length, context_length, dtype=torch.bool), diagonal=1))

    def forward(self, x):
        b, t, _ = x.shape
        queries = self.W_query(x)  # (b, t, d_out)
        keys = self.W_key(x)  # (b, t, d_out)
        values = self.W_value(x)  # (b, t, d_out)
        queries = queries.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        keys = keys.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        values = values.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        scores = queries @ keys.transpose(2, 3)  # (b, h, t, t)
        scores.masked_fill_(self.mask[:t, :t], -torch.inf)
        weights = torch.softmax(scores / self.head_dim**0.5, dim=-1)  # (b, h, t, t)
        weights = self.dropout(weights)
        context = (weights @ values).transpose(1, 2)  # (b, t, h, k)
        context = context.contiguous().view(b, t, self.d_out)  # (b, t, d_out)
        return self.out_proj(context)


# endregion


# region 沿用 ch04/main: LayerNorm, GELU, FeedForward, TransformerBlock, GPTModel
class LayerNorm(nn.Module):
    """层归一化（layer normalization）：把每个词元的 d 个数调成均值 0、方差 1，再学着缩放和平移。（详解见 ch04/main/example_02_layernorm.py）"""

    def __init__(self, emb_dim):
        super().__init__()
        self.eps = 1e-5
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x):
        mean = x.mean(dim=-1, keepdim=True)  # (…, 1)
        var = x.var(dim=-1, keepdim=True, unbiased=False)  # (…, 1)
        norm_x = (x - mean) / torch.sqrt(var + self.eps)  # (…, d)
        return self.scale * norm_x + self.shift


class GELU(nn.Module):
    """GELU 激活函数：像 ReLU，但拐弯是圆滑的。（详解见 ch04/main/example_03_feedforward.py）"""

    def forward(self, x):
        return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


class FeedForward(nn.Module):
    """前馈网络（feed forward）：先升到 4 倍维度，过激活函数，再降回来。（详解见 ch04/main/example_03_feedforward.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(cfg["emb_dim"], 4 * cfg["emb_dim"]),
            GELU(),
            nn.Linear(4 * cfg["emb_dim"], cfg["emb_dim"]),
        )

    def forward(self, x):
        return self.layers(x)


class TransformerBlock(nn.Module):
    """Transformer 块：注意力 + 前馈网络，各自先归一化、再用残差连接加回去。（详解见 ch04/main/example_05_transformer_block.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.att = MultiHeadAttention(
            d_in=cfg["emb_dim"],
            d_out=cfg["emb_dim"],
            context_length=cfg["context_length"],
            num_heads=cfg["n_heads"],
            dropout=cfg["drop_rate"],
            qkv_bias=cfg["qkv_bias"],
        )
        self.ff = FeedForward(cfg)
        self.norm1 = LayerNorm(cfg["emb_dim"])
        self.norm2 = LayerNorm(cfg["emb_dim"])
        self.drop_shortcut = nn.Dropout(cfg["drop_rate"])

    def forward(self, x):
        shortcut = x
        x = self.norm1(x)
        x = self.att(x)  # (b, t, d)
        x = self.drop_shortcut(x)
        x = x + shortcut
        shortcut = x
        x = self.norm2(x)
        x = self.ff(x)  # (b, t, d)
        x = self.drop_shortcut(x)
        return x + shortcut


class GPTModel(nn.Module):
    """GPT：词嵌入 + 位置嵌入 → 一摞 Transformer 块 → 归一化 → 对每个位置给出整个词表的分数。（详解见 ch04/main/example_06_gpt_model.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.Sequential(*[TransformerBlock(cfg) for _ in range(cfg["n_layers"])])
        self.final_norm = LayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)

    def forward(self, in_idx):
        t = in_idx.shape[1]
        if t > self.pos_emb.num_embeddings:
            raise ValueError(f"输入有 {t} 个词元，超过了模型的上下文长度 {self.pos_emb.num_embeddings}")
        tok_embeds = self.tok_emb(in_idx)  # (b, t, d)
        pos_embeds = self.pos_emb(torch.arange(t, device=in_idx.device))  # (t, d)
        x = tok_embeds + pos_embeds  # (b, t, d)
        x = self.drop_emb(x)
        x = self.trf_blocks(x)  # (b, t, d)
        x = self.final_norm(x)
        return self.out_head(x)  # (b, t, V)


# endregion


# region 沿用（含注释） ch06/main: load_messages, create_balanced_dataset, random_split, to_csv, SpamDataset
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


# endregion


# region 沿用（含注释） ch06/main: add_classification_head, calc_accuracy_loader, calc_loss_batch, calc_loss_loader
def add_classification_head(model, num_classes=2):
    """把语言模型改成分类器：全部冻结，换掉输出层，再解冻最后一块和最后的归一化。就地修改 model。

    参数:
        model (GPTModel): 预训练过的模型
        num_classes (int): 分几类

    出处: 原书 6.5 节，那里是几行顶层代码
    """
    # ① 冻结全部参数：不求梯度，优化器就不会动它。
    for param in model.parameters():
        param.requires_grad = False

    # ② 换掉输出层：V 个分数 → 2 个分数。新建的层默认就参加训练，所以冻结要在换之前。
    #    是与否，一个数也够（大于 0 算垃圾）；用 2 个，交叉熵、argmax 都能原样照用，要分十类，只改这个数。
    model.out_head = nn.Linear(in_features=model.out_head.in_features, out_features=num_classes)

    # ③ 解冻最后一块和最后的归一化。前面的层学到的是词与词怎样搭配，什么任务都用得着；
    #    越靠后越接近"预测下一个词元"这件具体的事，换了题目，最该改的是它们。
    for part in (model.trf_blocks[-1], model.final_norm):
        for param in part.parameters():
            param.requires_grad = True


def calc_accuracy_loader(data_loader, model, device, num_batches=None):
    """准确率：答对的条数 ÷ 看过的条数。

    参数:
        data_loader (DataLoader): 每次给出一批短信和标签
        model (nn.Module): 分类器，(b, t) → (b, t, 2)
        device (torch.device): 在哪里算
        num_batches (int 或 None): 只看前几批，快一些；None 表示全部

    返回:
        float: 0 到 1；一批都没有时为 nan

    出处: 原书 6.6 节
    """
    model.eval()
    correct_predictions, num_examples = 0, 0
    for input_batch, target_batch in islice(data_loader, num_batches):
        input_batch, target_batch = input_batch.to(device), target_batch.to(device)
        with torch.no_grad():  # 只看不训练，不必记计算图
            logits = model(input_batch)[:, -1, :]  # (b, 2)
        predicted_labels = torch.argmax(logits, dim=-1)  # (b,)
        num_examples += predicted_labels.shape[0]
        correct_predictions += (predicted_labels == target_batch).sum().item()
    return correct_predictions / num_examples if num_examples else float("nan")


def calc_loss_batch(input_batch, target_batch, model, device):
    """一批的损失：一条短信就是一道选择题，只用最后一个位置的分数作答。

    参数:
        input_batch (Tensor): 词元编号，(b, t)
        target_batch (Tensor): 标签，(b,)
        model (nn.Module): 分类器，(b, t) → (b, t, 2)
        device (torch.device): 在哪里算

    返回:
        Tensor: 一个数，带着计算图，可以 backward

    出处: 原书 6.6 节
    """
    input_batch, target_batch = input_batch.to(device), target_batch.to(device)
    # 与预训练只差这里：那时每个位置一道题，(b·t, V) 对 (b·t,)；现在一条短信一道题，(b, 2) 对 (b,)。
    logits = model(input_batch)[:, -1, :]  # (b, 2)
    return nn.functional.cross_entropy(logits, target_batch)


def calc_loss_loader(data_loader, model, device, num_batches=None):
    """一个数据集的平均损失，与第 5 章的相同。

    参数:
        data_loader (DataLoader): 每次给出一批短信和标签
        model (nn.Module): 分类器
        device (torch.device): 在哪里算
        num_batches (int 或 None): 只看前几批；None 表示全部

    返回:
        float: 各批损失的平均；一批都没有时为 nan

    出处: 原书 6.6 节
    """
    losses = []
    for input_batch, target_batch in islice(data_loader, num_batches):
        losses.append(calc_loss_batch(input_batch, target_batch, model, device).item())
    return sum(losses) / len(losses) if losses else float("nan")


# endregion


# region 沿用（含注释） ch06/main: evaluate_model, train_classifier_simple, plot_values, classify_review
def evaluate_model(model, train_loader, val_loader, device, eval_iter):
    """两个集的平均损失，与第 5 章的相同。

    参数:
        model (nn.Module): 分类器
        train_loader (DataLoader): 训练集
        val_loader (DataLoader): 验证集
        device (torch.device): 在哪里算
        eval_iter (int): 各看几批

    返回:
        tuple[float, float]: 训练损失、验证损失

    出处: 原书 6.7 节
    """
    model.eval()  # 关掉 dropout（这一章本来就是 0，这样写是好习惯）
    with torch.no_grad():
        train_loss = calc_loss_loader(train_loader, model, device, num_batches=eval_iter)
        val_loss = calc_loss_loader(val_loader, model, device, num_batches=eval_iter)
    model.train()
    return train_loss, val_loss


def train_classifier_simple(model, train_loader, val_loader, optimizer, device, num_epochs, eval_freq, eval_iter):
    """微调的训练循环。与第 5 章的 train_model_simple 只差两处：数样本不数词元，每轮结束看准确率，不看它写的话。

    参数:
        model (nn.Module): 分类器
        train_loader (DataLoader): 训练集
        val_loader (DataLoader): 验证集
        optimizer (torch.optim.Optimizer): 优化器
        device (torch.device): 在哪里算
        num_epochs (int): 几轮
        eval_freq (int): 每几步评估一次损失
        eval_iter (int): 评估时各看几批

    返回:
        tuple[list, list, list, list, int]: 训练损失、验证损失（每次评估一个）、训练准确率、验证准确率（每轮一个）、看过的样本数

    异常:
        ValueError: 损失成了 nan 或无穷大

    出处: 原书 6.7 节
    """
    train_losses, val_losses, train_accs, val_accs = [], [], [], []
    examples_seen, global_step = 0, -1

    for epoch in range(num_epochs):
        model.train()  # 算准确率时切到了评估模式，每轮开头切回来
        for input_batch, target_batch in train_loader:
            optimizer.zero_grad()  # ① 清零：梯度是累加的，不清，上一批的会混进来
            loss = calc_loss_batch(input_batch, target_batch, model, device)  # ② 前向传播
            if not loss.isfinite():  # 损失一旦坏了（nan 或无穷大），往后全是坏的
                raise ValueError(f"第 {global_step + 1} 步的损失是 {loss.item()}，训练停下：学习率多半太大了，改小再来")
            loss.backward()  # ③ 反向传播：走到最后一块就停，前面冻结的层不求梯度
            optimizer.step()  # ④ 更新：没有梯度的参数，优化器会跳过
            examples_seen += input_batch.shape[0]
            global_step += 1

            if global_step % eval_freq == 0:
                train_loss, val_loss = evaluate_model(model, train_loader, val_loader, device, eval_iter)
                train_losses.append(train_loss)
                val_losses.append(val_loss)
                print(f"第 {epoch + 1} 轮　第 {global_step:3} 步　训练损失 {train_loss:.3f}　验证损失 {val_loss:.3f}", flush=True)

        train_accuracy = calc_accuracy_loader(train_loader, model, device, num_batches=eval_iter)
        val_accuracy = calc_accuracy_loader(val_loader, model, device, num_batches=eval_iter)
        print(f"第 {epoch + 1} 轮结束　训练准确率 {train_accuracy:.2%}　验证准确率 {val_accuracy:.2%}（至多各看 {eval_iter} 批）")
        train_accs.append(train_accuracy)
        val_accs.append(val_accuracy)
    return train_losses, val_losses, train_accs, val_accs, examples_seen


def plot_values(epochs_seen, examples_seen, train_values, val_values, label="loss"):
    """画训练集和验证集的两条线，下方横轴是轮数，上方横轴是看过的样本数；存成 ch06/outputs/label-plot.png。

    参数:
        epochs_seen (Tensor): 每个点对应的轮数
        examples_seen (Tensor): 每个点对应的样本数
        train_values (list[float]): 训练集的损失或准确率
        val_values (list[float]): 验证集的
        label (str): "loss" 或 "accuracy"，后面可以再带几个字，与别的图分开

    出处: 原书 6.7 节
    """
    name = "损失" if label.startswith("loss") else "准确率"
    figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
    axis.plot(epochs_seen, train_values, marker="o", label=f"训练集{name}")
    axis.plot(epochs_seen, val_values, marker="o", linestyle="-.", label=f"验证集{name}")
    axis.set_xlabel("轮（epoch）")
    axis.set_ylabel(name)
    axis.legend()
    top = axis.twiny()  # 第二条横轴，与第一条共用纵轴
    top.plot(examples_seen, train_values, alpha=0)  # 画一条看不见的线，只为让刻度对齐
    top.set_xlabel("看过的样本数")
    figure.savefig(OUTPUTS / f"{label}-plot.png", dpi=150)
    plt.close(figure)


def classify_review(text, model, tokenizer, device, max_length=None, pad_token_id=50256):
    """判断一条短信是不是垃圾短信。

    参数:
        text (str): 短信
        model (GPTModel): 微调好的分类器
        tokenizer (tiktoken.Encoding): 分词器
        device (torch.device): 在哪里算
        max_length (int 或 None): 填充到多长，应与训练时相同；None 表示不填充
        pad_token_id (int): 填充词元的编号

    返回:
        str: "spam" 或 "not spam"

    出处: 原书 6.8 节
    """
    model.eval()
    input_ids = tokenizer.encode(text, disallowed_special=())

    # ① 太长的截断。位置嵌入有 n_ctx 行（上下文长度）、d 列，shape[0] 才是模型最多看得了的长度。
    #    书的第一次印刷写成了 shape[1]，那是嵌入维度：GPT-2 small 是 768，不会报错，只是把长短信多截掉一段。
    supported_context_length = model.pos_emb.weight.shape[0]
    max_length = min(max_length or len(input_ids), supported_context_length)
    input_ids = input_ids[:max_length]

    # ② 太短的填充。训练时总是在填充之后的那个位置作答，现在也得在那里答。
    input_ids += [pad_token_id] * (max_length - len(input_ids))
    input_tensor = torch.tensor(input_ids, device=device).unsqueeze(0)  # (1, t)

    # ③ 与训练时一样，只看最后一个位置。
    with torch.no_grad():
        logits = model(input_tensor)[:, -1, :]  # (1, 2)
    return "spam" if torch.argmax(logits, dim=-1).item() == 1 else "not spam"


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


# region 沿用 setup/device_check.py: pick_device
def pick_device(name="auto"):
    """选择计算设备；点名要的设备不存在就报错，绝不悄悄换成 CPU。（详解见 setup/device_check.py）"""
    available = {"mps": torch.backends.mps.is_available(), "cuda": torch.cuda.is_available(), "cpu": True}
    name = next(device for device, found in available.items() if found) if name == "auto" else name
    if not available.get(name):
        raise ValueError(f"这台机器上没有设备 {name}；运行 python setup/device_check.py 看有哪些、为什么")
    return torch.device(name)


# endregion


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def make_loaders(data_path, tokenizer, context_length, max_length=None, quick=False):
    """6.2–6.3 节：平衡、切分、写成三个 CSV，再凑成批。

    参数:
        data_path (Path): 短信，每行「ham 或 spam<制表符>正文」
        tokenizer (tiktoken.Encoding): 分词器
        context_length (int): 模型最多看多少个词元；更长的短信截断
        max_length (int 或 None): 填充到多长；None 表示训练集最长的那条
        quick (bool): 每份只取前 5 批，看看流程

    返回:
        tuple[list[DataLoader], int]: 训练、验证、测试的加载器，和填充到多长

    异常:
        ValueError: 短信太少，凑不出一批
    """
    balanced = create_balanced_dataset(load_messages(data_path))
    parts = random_split([({"ham": 0, "spam": 1}[label], text) for label, text in balanced], 0.7, 0.1)
    if len(parts[0]) < BATCH_SIZE or not parts[1]:
        raise ValueError(f"{data_path} 平衡之后只有 {len(balanced)} 条，切成三份，凑不出一批训练数据（{BATCH_SIZE} 条）；python setup/check_data.py {data_path} 会说怎么办")
    for name, part in zip(("train", "validation", "test"), parts):
        to_csv(part, OUTPUTS / f"{name}.csv")
    if max_length is None:
        max_length = min(SpamDataset(OUTPUTS / "train.csv", tokenizer).max_length, context_length)
    datasets = [SpamDataset(OUTPUTS / f"{name}.csv", tokenizer, max_length) for name in ("train", "validation", "test")]
    if quick:
        datasets = [Subset(dataset, range(min(5 * BATCH_SIZE, len(dataset)))) for dataset in datasets]
    torch.manual_seed(123)
    train_loader = DataLoader(datasets[0], batch_size=BATCH_SIZE, shuffle=True, num_workers=0, drop_last=True)
    rest = [DataLoader(dataset, batch_size=BATCH_SIZE, num_workers=0, drop_last=False) for dataset in datasets[1:]]
    return [train_loader, *rest], max_length


def load_model(path, tuned=False):
    """读回存下的模型：照配置建出一样的结构，填进同样的权重。

    参数:
        path (Path): 第 5 章存的权重，或微调好的分类器
        tuned (bool): 是不是微调好的分类器；是的话，输出层已经换过

    返回:
        tuple[GPTModel, dict]: 模型，和文件里的全部内容

    异常:
        ValueError: 文件坏了，或是别的文件
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)  # weights_only：只读数，不执行文件里夹带的代码
        model = GPTModel(saved["config"] | {"drop_rate": 0.0})  # 与书上相同：只微调几轮，不用 dropout
        if tuned:
            add_classification_head(model, num_classes=2)  # 装之前，先换成同样的形状
        model.load_state_dict(saved["model"])
    except Exception:  # 坏文件、别的文件，能引出各种异常
        raise ValueError(f"{path} 读不出来：要{'这个脚本' if tuned else '第 5 章'}存的 .pth，重新存一次") from None
    if bad := [name for name, tensor in saved["model"].items() if not tensor.isfinite().all()]:
        raise ValueError(f"{path} 里的 {bad[0]} 有 nan 或 inf，一个就会传染给所有的数，请重新存一次")
    return model, saved


def save_model(weights, path):
    """存权重。先写临时文件再改名：写到一半断电，旧的还在。

    参数:
        weights (dict): 配置、状态字典，和填充到多长
        path (Path): 存到哪里

    异常:
        ValueError: 写不下
    """
    part = path.with_suffix(".part")
    try:
        torch.save(weights, part)
        os.replace(part, path)
    except (OSError, RuntimeError):  # 磁盘满了，torch.save 报的是 RuntimeError
        raise ValueError(f"存不下 {path}：磁盘满了，或没有写的权限") from None
    finally:
        part.unlink(missing_ok=True)


def finetune(args, classifier):
    """6.2–6.8 节走一遍：从短信和预训练的权重，到会判断短信的分类器。

    参数:
        args (argparse.Namespace): 命令行参数，见 main
        classifier (Path): 分类器存到哪里
    """
    device, tokenizer = pick_device(args.device), tiktoken.get_encoding("gpt2")
    weights = find_data(WEIGHTS[args.size])
    model, ckpt = load_model(weights)
    config = ckpt["config"] | {"drop_rate": 0.0}

    # 6.2–6.3　数据
    data_path = args.data or find_data("SMSSpamCollection.tsv", "messages.tsv")
    loaders, max_length = make_loaders(data_path, tokenizer, config["context_length"], quick=args.quick)
    train_loader, val_loader, test_loader = loaders
    print(f"数据　{data_path}　每批 ({BATCH_SIZE}, {max_length})　(b, t)")
    print("批　　训练 {}　验证 {}　测试 {}".format(*map(len, loaders)))

    # 6.4–6.5　预训练的模型，换成分类头
    torch.manual_seed(123)  # 新的输出层是随机的
    add_classification_head(model, num_classes=2)
    model.to(device)
    num_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"权重　{weights}　{sum(p.numel() for p in model.parameters()):,} 个参数，训练其中的 {num_trainable:,} 个，用 {device}")

    # 6.6　微调前的准确率和损失，各看几批
    torch.manual_seed(123)
    accuracy_before = [calc_accuracy_loader(loader, model, device, num_batches=10) for loader in loaders]
    with torch.no_grad():
        loss_before = [calc_loss_loader(loader, model, device, num_batches=5) for loader in loaders]
    print("\n微调前的准确率　训练 {:.2%}　验证 {:.2%}　测试 {:.2%}（至多各看 10 批）".format(*accuracy_before))
    print("微调前的损失　　训练 {:.3f}　 验证 {:.3f}　 测试 {:.3f}（至多各看 5 批）\n".format(*loss_before))

    # 6.7　微调。书上把全部参数交给优化器；冻结的没有梯度，既不更新，也不占动量的内存。
    start, num_epochs = time.time(), 1 if args.quick else NUM_EPOCHS
    torch.manual_seed(123)  # 每轮打乱的次序
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1)
    train_losses, val_losses, train_accs, val_accs, examples_seen = train_classifier_simple(
        model, train_loader, val_loader, optimizer, device, num_epochs, EVAL_FREQ, EVAL_ITER
    )
    print(f"用时 {(time.time() - start) / 60:.2f} 分钟")
    save_model({"config": config, "model": model.state_dict(), "max_length": max_length}, classifier)
    # 损失每 EVAL_FREQ 步量一次，从第 0 步起；准确率每轮结束时才量，第一个点在第 1 轮。
    steps, epochs = torch.arange(len(train_losses)) * EVAL_FREQ, torch.arange(1, num_epochs + 1)
    trial = "-quick" * args.quick  # 图也另存，不盖掉好的
    plot_values(steps / len(train_loader), steps * BATCH_SIZE, train_losses, val_losses, "loss" + trial)
    plot_values(epochs, epochs * len(train_loader) * BATCH_SIZE, train_accs, val_accs, "accuracy" + trial)

    accuracy = [calc_accuracy_loader(loader, model, device) for loader in loaders]
    spam_share = torch.cat([labels for _, labels in test_loader]).float().mean().item()
    print("\n微调后的准确率　训练 {:.2%}　验证 {:.2%}　测试 {:.2%}（全部）".format(*accuracy))
    print(f"比一比　测试集上，一律答一类的准确率 {max(spam_share, 1 - spam_share):.2%}；书上微调好的 124M，原书的数据 95.67%")
    if args.quick:
        print("（--quick 只练了几步，准确率没有意义）")
    elif args.size == "mini":
        print("这里只训练了最后一块；全部参数都训练会怎样，见练习 6.2")

    # 6.8　判断没见过的短信
    print(f"分类器　{classifier}　图片　loss{trial}-plot.png、accuracy{trial}-plot.png\n")
    for text in REVIEWS:
        print(f"{classify_review(text, model, tokenizer, device, max_length):<9}{text}")
    print("\n这个数字对吗？")

    # 最后一块：注意力 4d²、前馈 8d²，偏置 6d（有 qkv_bias 再加 3d），两个归一化 4d；外面的归一化 2d；输出层 2d + 2。
    d = config["emb_dim"]
    expected = 12 * d * d + (10 + 3 * config["qkv_bias"]) * d + 2 * d + 2 * d + 2
    claim = f"最后一块 + 最后的归一化 + 输出层 = {expected:,} 个参数参加训练"
    confirm(claim, num_trainable == expected, "忘了冻结，或解冻了别的层")
    frozen = torch.equal(ckpt["model"]["pos_emb.weight"], model.pos_emb.weight.cpu())
    confirm("冻结的层一个数也没变（看位置嵌入）", frozen, "忘了 requires_grad = False")
    seen = num_epochs * len(train_loader) * BATCH_SIZE
    claim = f"看过 {num_epochs} 轮 × {len(train_loader)} 批 × {BATCH_SIZE} 条 = {seen:,} 条"
    confirm(claim, examples_seen == seen, "drop_last 没有开")
    if args.size == "124M" and not args.quick and data_path.stat().st_size == 477_907:  # 大小与原书的那份数据相同
        got = [*accuracy_before, *loss_before, train_losses[-1], val_losses[-1], *accuracy]
        book = [0.4625, 0.45, 0.4875, 2.453, 2.583, 2.322, 0.083, 0.074, 0.9721, 0.9732, 0.9567]  # 各种 CPU 和 MPS 上都一样
        confirm("微调前、最后一次评估、微调后，都与书上相同", np.allclose(got, book, atol=0.02), "种子、学习率或批的次序不同")


def classify(args, classifier):
    """6.8 节：读回微调好的分类器，判断一条短信。

    参数:
        args (argparse.Namespace): 命令行参数，见 main
        classifier (Path): 分类器的文件

    异常:
        ValueError: 短信是空的，或还没有微调过
    """
    if not args.classify.strip():
        raise ValueError("--classify 是空的，请在引号里写上要判断的短信")
    if not classifier.is_file():
        raise ValueError(f"找不到 {classifier}，请先运行同样的命令，去掉 --classify")
    device, (model, saved), tokenizer = pick_device(args.device), load_model(classifier, tuned=True), tiktoken.get_encoding("gpt2")
    answer = classify_review(args.classify, model.to(device), tokenizer, device, saved["max_length"])
    print(f"分类器　{classifier}\n{answer}　{args.classify}")
    length = len(tokenizer.encode(args.classify, disallowed_special=()))
    if length > saved["max_length"]:
        print(f"这条有 {length} 个词元，只看了前 {saved['max_length']} 个：训练时每条就是这么长，后面的截掉了")


def main():
    """微调一个垃圾短信分类器；给了 --classify，就用微调好的判断这一条。"""
    parser = argparse.ArgumentParser(description="6.2–6.8 节　分类微调：垃圾短信分类器")
    parser.add_argument("--size", choices=WEIGHTS, default="mini", help="从哪份预训练的权重开始（默认：mini）")
    parser.add_argument("--data", type=Path, help="短信文件，每行「ham 或 spam<制表符>正文」（默认：原书的，没有就用自带的）")
    parser.add_argument("--device", default="auto", help="auto、mps、cuda 或 cpu（默认：auto）")
    parser.add_argument("--quick", action="store_true", help="只用几十条短信训练 1 轮，看看流程")
    parser.add_argument("--classify", metavar="短信", help="不训练，用微调好的分类器判断这一条")
    args = parser.parse_args()
    classifier = OUTPUTS / f"review_classifier_{'quick' if args.quick else args.size}.pth"  # --quick 的另存，不会盖掉好的
    try:
        finetune(args, classifier) if args.classify is None else classify(args, classifier)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:  # 磁盘满了，没有权限
        parser.error(f"读写不了 {error.filename or OUTPUTS}：{error.strerror}")
    except KeyboardInterrupt:
        print("\n停下了。分类器要到训练完才存，写到一半的不会盖掉以前的")
        sys.exit(130)


if __name__ == "__main__":
    main()
