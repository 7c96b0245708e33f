"""第 6 章 · 6.7 节　在标注的数据上微调模型

读完你应该能回答：
    1. 这个训练循环，与第 5 章预训练的只差哪几行？
    2. 学习率为什么只有预训练的几分之一？为什么几轮就够？
    3. 怎样从两条曲线看出过拟合？训练完的准确率，要和什么比？

运行：
    python ch06/main/example_05_finetune_classifier.py        # 图片和分类器写到 ch06/outputs/
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 60 秒，0.6 GB（2 核 CPU）

形状记号（全书统一）：b 批大小　t 序列长度（词元数）　d 嵌入维度　h 头数　k 每个头的维度（k = d / h）　V 词表大小　n 样本数
"""

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
from torch.utils.data import DataLoader, Dataset

# 改这里
WEIGHTS = "gpt_mini.pth"  # 第 5 章自己训练的；书上是 124M，用 gpt_class_finetune.py --size 124M
NUM_EPOCHS = 5
LEARNING_RATE = 5e-5  # 书上预训练用 4e-4；这里只要在学好的权重上轻轻改，步子大了，会把学好的冲掉
BATCH_SIZE = 8
EVAL_FREQ, EVAL_ITER = 50, 5  # 每 50 步评估一次，每次各看 5 批
DEVICE = "cpu"  # 苹果芯片可以改成 "mps"，英伟达显卡改成 "cuda"


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


# region 沿用 ch06/main: load_messages, create_balanced_dataset, random_split, to_csv, SpamDataset
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


class SpamDataset(Dataset):
    """短信的数据集：先分好词，再一律填充到同样长。（详解见 ch06/main/example_02_dataloader.py）"""

    def __init__(self, csv_file, tokenizer, max_length=None, pad_token_id=50256):
        with open(csv_file, encoding="utf-8", newline="") as file:
            self.data = list(csv.DictReader(file))
        self.encoded_texts = [tokenizer.encode(row["Text"], disallowed_special=()) for row in self.data]
        if max_length is None:
            self.max_length = self._longest_encoded_length()
        else:
            self.max_length = max_length
            self.encoded_texts = [encoded_text[: self.max_length] for encoded_text in self.encoded_texts]
        self.encoded_texts = [
            encoded_text + [pad_token_id] * (self.max_length - len(encoded_text)) for encoded_text in self.encoded_texts
        ]

    def __getitem__(self, index):
        return (
            torch.tensor(self.encoded_texts[index], dtype=torch.long),
            torch.tensor(int(self.data[index]["Label"]), dtype=torch.long),
        )

    def __len__(self):
        return len(self.data)

    def _longest_encoded_length(self):
        return max(len(encoded_text) for encoded_text in self.encoded_texts)


# endregion


# region 沿用 ch06/main: add_classification_head, calc_accuracy_loader, calc_loss_batch, calc_loss_loader
def add_classification_head(model, num_classes=2):
    """把语言模型改成分类器：全部冻结，换掉输出层，再解冻最后一块和最后的归一化。就地修改 model。（详解见 ch06/main/example_03_classification_head.py）"""
    for param in model.parameters():
        param.requires_grad = False
    model.out_head = nn.Linear(in_features=model.out_head.in_features, out_features=num_classes)
    for part in (model.trf_blocks[-1], model.final_norm):
        for param in part.parameters():
            param.requires_grad = True


def calc_accuracy_loader(data_loader, model, device, num_batches=None):
    """准确率：答对的条数 ÷ 看过的条数。（详解见 ch06/main/example_04_loss_and_accuracy.py）"""
    model.eval()
    correct_predictions, num_examples = 0, 0
    for input_batch, target_batch in islice(data_loader, num_batches):
        input_batch, target_batch = input_batch.to(device), target_batch.to(device)
        with torch.no_grad():
            logits = model(input_batch)[:, -1, :]  # (b, 2)
        predicted_labels = torch.argmax(logits, dim=-1)  # (b,)
        num_examples += predicted_labels.shape[0]
        correct_predictions += (predicted_labels == target_batch).sum().item()
    return correct_predictions / num_examples if num_examples else float("nan")


def calc_loss_batch(input_batch, target_batch, model, device):
    """一批的损失：一条短信就是一道选择题，只用最后一个位置的分数作答。（详解见 ch06/main/example_04_loss_and_accuracy.py）"""
    input_batch, target_batch = input_batch.to(device), target_batch.to(device)
    logits = model(input_batch)[:, -1, :]  # (b, 2)
    return nn.functional.cross_entropy(logits, target_batch)


def calc_loss_loader(data_loader, model, device, num_batches=None):
    """一个数据集的平均损失，与第 5 章的相同。（详解见 ch06/main/example_04_loss_and_accuracy.py）"""
    losses = []
    for input_batch, target_batch in islice(data_loader, num_batches):
        losses.append(calc_loss_batch(input_batch, target_batch, model, device).item())
    return sum(losses) / len(losses) if losses else float("nan")


# endregion

here = Path(__file__ if "__file__" in globals() else "x").resolve()  # 笔记本里没有 __file__，就从当前文件夹往上找
OUTPUTS = next((folder / "ch06" for folder in here.parents if (folder / "ch06").is_dir()), Path()) / "outputs"

# %% 接着前几节：三个数据加载器
path = find_data("SMSSpamCollection.tsv", "messages.tsv")
numbered = [({"ham": 0, "spam": 1}[label], text) for label, text in create_balanced_dataset(load_messages(path))]
for name, part in zip(("train", "validation", "test"), random_split(numbered, 0.7, 0.1)):
    to_csv(part, OUTPUTS / f"{name}.csv")
tokenizer = tiktoken.get_encoding("gpt2")
train_dataset = SpamDataset(OUTPUTS / "train.csv", tokenizer)
val_dataset = SpamDataset(OUTPUTS / "validation.csv", tokenizer, train_dataset.max_length)
test_dataset = SpamDataset(OUTPUTS / "test.csv", tokenizer, train_dataset.max_length)
train_loader = DataLoader(train_dataset, batch_size=BATCH_SIZE, shuffle=True, num_workers=0, drop_last=True)
val_loader = DataLoader(val_dataset, batch_size=BATCH_SIZE, num_workers=0, drop_last=False)
test_loader = DataLoader(test_dataset, batch_size=BATCH_SIZE, num_workers=0, drop_last=False)

# %% 换了输出层的模型：只有最后一块、最后的归一化和输出层参加训练
ckpt = torch.load(find_data(WEIGHTS), map_location="cpu", weights_only=True)
config = ckpt["config"] | {"drop_rate": 0.0}
model = GPTModel(config)
model.load_state_dict(ckpt["model"])
torch.manual_seed(123)
add_classification_head(model, num_classes=2)
model.to(DEVICE)
frozen = model.trf_blocks[0].att.W_query.weight.detach().clone()  # 留个底，训练完看冻结的层动没动
print(f"【6.7】数据 {path}　权重 {find_data(WEIGHTS)}")


# %% 评估：在训练集和验证集上各看几批
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


# %% 训练循环
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


# %% 开始微调
start = time.time()
torch.manual_seed(123)  # 每轮打乱的次序
# 书上把全部参数交给优化器；冻结的没有梯度，既不更新，也不占动量的内存。
optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1)
train_losses, val_losses, train_accs, val_accs, examples_seen = train_classifier_simple(
    model, train_loader, val_loader, optimizer, DEVICE, NUM_EPOCHS, EVAL_FREQ, EVAL_ITER
)
print(f"用时 {(time.time() - start) / 60:.2f} 分钟")

# %% 存下来，6.8 节用
classifier = OUTPUTS / "review_classifier_mini.pth"
part = classifier.with_suffix(".part")
try:
    torch.save({"config": config, "model": model.state_dict(), "max_length": train_dataset.max_length}, part)
    os.replace(part, classifier)  # 写完再改名：写到一半断电，旧的还在
except (OSError, RuntimeError):  # 磁盘满了，torch.save 报的是 RuntimeError
    part.unlink(missing_ok=True)
    print(f"存不下 {classifier}：磁盘满了，或没有写的权限", file=sys.stderr)
    sys.exit(2)
print(f"分类器　{classifier}")


# %% 画出来
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


# 损失每 EVAL_FREQ 步量一次，从第 0 步起；准确率每轮结束时才量，第一个点在第 1 轮。
steps = torch.arange(len(train_losses)) * EVAL_FREQ
plot_values(steps / len(train_loader), steps * BATCH_SIZE, train_losses, val_losses)
epochs = torch.arange(1, NUM_EPOCHS + 1)
plot_values(epochs, epochs * len(train_loader) * BATCH_SIZE, train_accs, val_accs, label="accuracy")
print(f"图片　{OUTPUTS / 'loss-plot.png'}、accuracy-plot.png")
# 两条线一起往下走，是在学；训练损失还在降、验证损失掉头往上，就是过拟合，该停了。这次的两条线，走到哪里了？
# 训练损失跳得厉害些：每次只看 EVAL_ITER 批，训练集又每次重新打乱，看到的不是同样的几十条；验证集不打乱，每次都是同样的。

# %% 全部数据上的准确率，与"一律答一类"比
accuracy = [calc_accuracy_loader(loader, model, DEVICE) for loader in (train_loader, val_loader, test_loader)]
print("\n全部数据上的准确率　训练 {:.2%}　验证 {:.2%}　测试 {:.2%}".format(*accuracy))
spam_share = sum(row["Label"] == "1" for row in test_dataset.data) / len(test_dataset)
baseline = max(spam_share, 1 - spam_share)
print(f"测试集上，一律答一类　　　{baseline:.2%}；微调出来的比它高 {100 * (accuracy[2] - baseline):.1f} 个百分点")
print("书上的 124M，原书的数据　　训练 97.21%　验证 97.32%　测试 95.67%")
# 同样的程序，124M 读过几十亿个词元，前面几块给得出有用的特征，只动最后一块就够；mini 只读过一篇小说，短信里的词一大半没见过，
# 前面的块又冻结着，能学的就少。全部参数都训练会好多少？练习 6.2 量给你看。


# %% 这个数字对吗？
# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion

print("\n这个数字对吗？")
same = torch.equal(frozen, model.trf_blocks[0].att.W_query.weight)
confirm("冻结的层一个数也没变（看第一块的 W_query）", same, "忘了 requires_grad = False")
seen = NUM_EPOCHS * len(train_loader) * BATCH_SIZE
confirm(f"看过 {NUM_EPOCHS} 轮 × {len(train_loader)} 批 × {BATCH_SIZE} 条 = {seen:,} 条", examples_seen == seen, "drop_last 没有开")
first, final = train_losses[0], train_losses[-1]
confirm(f"训练损失降了：{first:.3f} → {final:.3f}", final < first, "学习率太大，或忘了 optimizer.step()")
again = torch.load(classifier, map_location="cpu", weights_only=True)["model"]
same = all(torch.equal(again[name], value.cpu()) for name, value in model.state_dict().items())
confirm("存下的权重，读回来一个数也不差", same, "存早了，是训练之前的")

# %% 动手改
# 1. 把 LEARNING_RATE 改成 3e-4：mini 的测试准确率高了多少？再改成 3e-2 呢？
# 2. 把 NUM_EPOCHS 改成 15：验证损失还在降吗？
# 3. 训练之前加一行 model.out_head.requires_grad_(False)：随机的输出层一直不动，别的层绕得过去吗？
