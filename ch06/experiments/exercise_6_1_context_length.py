"""第 6 章 · 练习 6.1　填充到整个上下文长度

题目：　书里把短信填充到训练集最长的那条（120 个词元）。一律填充到上下文长度（GPT-2 是 1024，mini 是 256），测试准确率会变吗？
先想：　多出来的全是填充词元，一个字也没多；可是作答的位置，离短信的最后一个字又远了几百个词元……
解法：　只改 SpamDataset 的 max_length，两次微调并排比：① 测试准确率；② 用时，注意力要算的格子是长度的平方。
动手改：把 longer 改成 40：比最长的还短，会截断，它反而更快，准确率变了多少？

运行：
    python ch06/experiments/exercise_6_1_context_length.py
    python ch06/experiments/exercise_6_1_context_length.py --size 124M      # 书上的答案：95.67% → 78.33%
    mini 约 5 分钟，0.6 GB（2 核 CPU）
"""

import argparse
import csv
import os
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import tiktoken
import torch
import torch.nn as nn
from torch.utils.data import DataLoader, Dataset, Subset

# 改这里：与 gpt_class_finetune.py 相同
NUM_EPOCHS = 5
LEARNING_RATE = 5e-5
BATCH_SIZE = 8
EVAL_FREQ, EVAL_ITER = 50, 5

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


# region 沿用 ch06/main: load_messages, create_balanced_dataset, random_split, to_csv, SpamDataset, add_classification_head
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


def add_classification_head(model, num_classes=2):
    """把语言模型改成分类器：全部冻结，换掉输出层，再解冻最后一块和最后的归一化。就地修改 model。（详解见 ch06/main/example_03_classification_head.py）"""
    for param in model.parameters():
        param.requires_grad = False
    model.out_head = nn.Linear(in_features=model.out_head.in_features, out_features=num_classes)
    for part in (model.trf_blocks[-1], model.final_norm):
        for param in part.parameters():
            param.requires_grad = True


# endregion


# region 沿用 ch06/main: calc_accuracy_loader, calc_loss_batch, calc_loss_loader, evaluate_model, train_classifier_simple
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


def evaluate_model(model, train_loader, val_loader, device, eval_iter):
    """两个集的平均损失，与第 5 章的相同。（详解见 ch06/main/example_05_finetune_classifier.py）"""
    model.eval()
    with torch.no_grad():
        train_loss = calc_loss_loader(train_loader, model, device, num_batches=eval_iter)
        val_loss = calc_loss_loader(val_loader, model, device, num_batches=eval_iter)
    model.train()
    return train_loss, val_loss


def train_classifier_simple(model, train_loader, val_loader, optimizer, device, num_epochs, eval_freq, eval_iter):
    """微调的训练循环。与第 5 章的 train_model_simple 只差两处：数样本不数词元，每轮结束看准确率，不看它写的话。（详解见 ch06/main/example_05_finetune_classifier.py）"""
    train_losses, val_losses, train_accs, val_accs = [], [], [], []
    examples_seen, global_step = 0, -1
    for epoch in range(num_epochs):
        model.train()
        for input_batch, target_batch in train_loader:
            optimizer.zero_grad()
            loss = calc_loss_batch(input_batch, target_batch, model, device)
            if not loss.isfinite():
                raise ValueError(f"第 {global_step + 1} 步的损失是 {loss.item()}，训练停下：学习率多半太大了，改小再来")
            loss.backward()
            optimizer.step()
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


# endregion


# region 沿用 ch06/main/gpt_class_finetune.py: make_loaders
def make_loaders(data_path, tokenizer, context_length, max_length=None, quick=False):
    """6.2–6.3 节：平衡、切分、写成三个 CSV，再凑成批。（详解见 ch06/main/gpt_class_finetune.py）"""
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


def load_classifier(weights):
    """6.4–6.5 节：装上预训练的权重，换成分类头。

    参数:
        weights (Path): 第 5 章写的权重，{"config", "model"}

    返回:
        tuple[GPTModel, dict]: 分类器，只有最后一块、最后的归一化和输出层参加训练；它的配置

    异常:
        ValueError: 文件坏了，或里面有不能用的数
    """
    try:
        ckpt = torch.load(weights, map_location="cpu", weights_only=True)
        config = ckpt["config"] | {"drop_rate": 0.0}
        model = GPTModel(config)
        model.load_state_dict(ckpt["model"])
    except Exception:  # 坏文件、别的文件，能引出各种异常
        raise ValueError(f"{weights} 读不出来：要第 5 章存的 .pth，重新存一次") from None
    if bad := [name for name, tensor in ckpt["model"].items() if not tensor.isfinite().all()]:
        raise ValueError(f"{weights} 里的 {bad[0]} 有 nan 或 inf，一个就会传染给所有的数，请重新存一次")
    torch.manual_seed(123)
    add_classification_head(model, num_classes=2)
    return model, config


def finetune(title, model, loaders, device, num_epochs):
    """6.7 节：微调一次，量三个集合的准确率。起点、种子、设置都相同，结果的差别就只来自改动的那一处。

    参数:
        title (str): 这一次叫什么
        model (GPTModel): 分类器
        loaders (list[DataLoader]): 训练、验证、测试的加载器
        device (torch.device): 在哪里算
        num_epochs (int): 几轮

    返回:
        str: 结果表里的一行：三个准确率和用时
    """
    print(f"\n【{title}】")
    model.to(device)
    torch.manual_seed(123)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1)
    start = time.time()
    train_classifier_simple(model, loaders[0], loaders[1], optimizer, device, num_epochs, EVAL_FREQ, EVAL_ITER)
    seconds = time.time() - start
    accuracy = [calc_accuracy_loader(loader, model, device) for loader in loaders]
    return f"{title:　<10}" + "".join(f"{value:9.2%}" for value in accuracy) + f"{seconds:8.0f} 秒"


def compare(args):
    """填充到最长的那条，与填充到整个上下文长度，各微调一次。

    参数:
        args (argparse.Namespace): 命令行参数，见 main
    """
    device, tokenizer = pick_device(args.device), tiktoken.get_encoding("gpt2")
    weights, data_path = find_data(WEIGHTS[args.size]), args.data or find_data("SMSSpamCollection.tsv", "messages.tsv")
    num_epochs = 1 if args.quick else NUM_EPOCHS
    print(f"数据 {data_path}　权重 {weights}")

    # ---- 解答：只改填充到多长，别的一个字不动 ----
    model, config = load_classifier(weights)
    loaders, longest = make_loaders(data_path, tokenizer, config["context_length"], quick=args.quick)
    rows = [finetune(f"填充到 {longest:>4}", model, loaders, device, num_epochs)]

    model, config = load_classifier(weights)
    longer = 2 * longest if args.quick else config["context_length"]
    loaders, _ = make_loaders(data_path, tokenizer, config["context_length"], max_length=longer, quick=args.quick)
    rows.append(finetune(f"填充到 {longer:>4}", model, loaders, device, num_epochs))

    print("\n" + "　" * 10 + "     训练     验证     测试      用时")
    print("\n".join(rows))
    print("书上（124M，原书的数据）：填充到 120 是 95.67%，填充到 1024 是 78.33%。你的是准确率掉得多，还是时间花得多？")
    # 多出来的词元没有一点新内容，计算却一步不少；作答的位置又离短信更远，注意力要从更长的一串填充里把它找出来。

    print("\n这个数字对吗？")
    inputs, _ = loaders[0].dataset[0]
    confirm(f"第二次每条都是 {longer} 个词元", len(inputs) == longer, "max_length 没有传进 SpamDataset")
    kept = [i for i in inputs.tolist() if i != 50256]
    confirm("多出来的全是填充词元：去掉它们，剩下的不超过原来的长度", len(kept) <= longest, "填充词元不是 50256")


def main():
    """练习 6.1 的命令行。"""
    parser = argparse.ArgumentParser(description="练习 6.1　填充到整个上下文长度")
    parser.add_argument("--size", choices=WEIGHTS, default="mini", help="从哪份预训练的权重开始（默认：mini）")
    parser.add_argument("--data", type=Path, help="短信文件（默认：原书的，没有就用自带的）")
    parser.add_argument("--device", default="auto", help="auto、mps、cuda 或 cpu（默认：auto）")
    parser.add_argument("--quick", action="store_true", help="只用几十条短信训练 1 轮，看看流程；这时的准确率没有意义")
    args = parser.parse_args()
    try:
        compare(args)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:  # 磁盘满了，没有权限
        parser.error(f"读写不了 {error.filename or '输出'}：{error.strerror}")


if __name__ == "__main__":
    main()
