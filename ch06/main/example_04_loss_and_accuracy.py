"""第 6 章 · 6.6 节　分类的损失和准确率

读完你应该能回答：
    1. 准确率 50% 算好还是坏？要和什么比？
    2. 分类的损失，与第 5 章预训练的损失差在哪一行？
    3. 我们关心的是准确率，为什么训练时优化的却是交叉熵？

运行：
    python ch06/main/example_04_loss_and_accuracy.py        # 图片写到 ch06/outputs/loss_and_accuracy.png
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 6 秒，0.6 GB（2 核 CPU）

形状记号（全书统一）：b 批大小　t 序列长度（词元数）　d 嵌入维度　h 头数　k 每个头的维度（k = d / h）　V 词表大小　n 样本数
"""

import csv
import os
import sys
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
WEIGHTS = "gpt_mini.pth"  # 第 5 章自己训练的；换成 "gpt2-124M.pth"，就是书上的模型（先运行 python ch05/main/gpt_download.py）
HEAD_SEED = 123  # 新的输出层是随机的，由它决定
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
train_loader = DataLoader(train_dataset, batch_size=8, shuffle=True, num_workers=0, drop_last=True)
val_loader = DataLoader(val_dataset, batch_size=8, num_workers=0, drop_last=False)
test_loader = DataLoader(test_dataset, batch_size=8, num_workers=0, drop_last=False)

# %% 换了输出层的模型
ckpt = torch.load(find_data(WEIGHTS), map_location="cpu", weights_only=True)
model = GPTModel(ckpt["config"] | {"drop_rate": 0.0})
model.load_state_dict(ckpt["model"])
torch.manual_seed(HEAD_SEED)
add_classification_head(model, num_classes=2)
model.to(DEVICE).eval()
print(f"【6.6】数据 {path}　权重 {find_data(WEIGHTS)}")

# %% 分数 → 概率 → 类别
inputs = torch.tensor(tokenizer.encode("Do you have time"), device=DEVICE).unsqueeze(0)  # (1, t)
with torch.no_grad():
    logits = model(inputs)[:, -1, :]  # (1, 2)　只取最后一个位置，理由见 6.5 节
probas = torch.softmax(logits, dim=-1)  # (1, 2)
rounded = [[round(value, 4) for value in row[0].tolist()] for row in (logits, probas)]
print(f"分数 {rounded[0]} → 概率 {rounded[1]} → 类别 {probas.argmax().item()}")
# softmax 不改变谁大谁小，只要类别的话，直接对分数取 argmax 就行。


# %% 准确率（accuracy）：答对的比例
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


loaders = [train_loader, val_loader, test_loader]
torch.manual_seed(123)  # 训练集每次都重新打乱，只看前 10 批的话，看到哪 80 条由种子决定
accuracy = [calc_accuracy_loader(loader, model, DEVICE, num_batches=10) for loader in loaders]
print("\n微调前的准确率（各看 10 批）　训练 {:.2%}　验证 {:.2%}　测试 {:.2%}".format(*accuracy))

# %% 这个数算好还是坏？与"一律答一类"比一比
torch.manual_seed(123)  # 同样的种子，看到同样的 10 批
always, answered = [], []
for loader in loaders:
    batches = list(islice(loader, 10))
    labels = torch.cat([target_batch for _, target_batch in batches])  # (n,)
    always.append(labels.float().mean().item())  # spam 是 1，平均就是 spam 的比例
    with torch.no_grad():
        answers = torch.cat([model(input_batch.to(DEVICE))[:, -1, :].argmax(dim=-1) for input_batch, _ in batches])  # (n,)
    answered.append(answers.float().mean().item())
print("同样这 10 批，一律答 spam 的准确率　训练 {:.2%}　验证 {:.2%}　测试 {:.2%}".format(*always))
print("没微调过的模型，答 spam 的占　　　　训练 {:.2%}　验证 {:.2%}　测试 {:.2%}".format(*answered))
# 书上印的 46.25%、45.00%、48.75%，不多不少，正是这 10 批里 spam 的比例：那个没微调过的 124M，每一条都答 spam。
# 为什么？短信都填充过，最后一个位置几乎总是 50256，它给出的分数对每条短信都差不多（6.5 节量过）；落在界线的哪一边，
# 由随机的输出层决定。两类各一半时，一律答一类也有五成；数据不平衡，一律答 ham 就有八成多。看准确率，先问这个底数。


# %% 分类的损失
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


with torch.no_grad():
    loss = [calc_loss_loader(loader, model, DEVICE, num_batches=5) for loader in loaders]
print("\n微调前的损失（各看 5 批）　　训练 {:.3f}　验证 {:.3f}　测试 {:.3f}".format(*loss))
# 两类各猜 50%，损失是 ln 2 = 0.693。书上的 124M 是 2.4 上下：答错的那一半，错得很有把握。

# %% 为什么不直接优化准确率
# 一条垃圾短信，分数之差从 −4 走到 4：准确率在 0 处跳一下，别处都是平的，梯度处处为 0，不知道往哪边走；
# 交叉熵是一条光滑的坡，错得越有把握越陡，答对了也还有一点坡度。它是准确率的可导的替身。
gap = torch.linspace(-4, 4, 401, requires_grad=True)  # (n,)　"垃圾"的分数减去"正常"的分数
pair = torch.stack([torch.zeros_like(gap), gap], dim=1)  # (n, 2)
curve = nn.functional.cross_entropy(pair, torch.ones(len(gap), dtype=torch.long), reduction="none")  # (n,)
curve.sum().backward()
wrong = (gap < 0).float()  # (n,)　答错为 1
print("\n分数之差　交叉熵　坡度　答错")
for i in (0, 200, 400):
    print(f"{gap[i].item():8.0f}{curve[i].item():8.3f}{gap.grad[i].item():8.3f}{wrong[i].item():5.0f}")

figure, axis = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
axis.plot(gap.detach(), curve.detach(), label="交叉熵：处处有坡度")
axis.plot(gap.detach(), wrong, linestyle="-.", label="答错（1 − 准确率）：坡度是 0")
axis.axvline(0, color="gray", linewidth=0.8)
axis.text(-3.9, 0.15, "← 判成正常（错）")
axis.text(1.9, 1.15, "判成垃圾（对）→")
axis.set_xlabel("垃圾的分数 − 正常的分数")
axis.set_ylabel("损失")
axis.set_title("一条垃圾短信的损失")
axis.legend()
figure.savefig(OUTPUTS / "loss_and_accuracy.png", dpi=150)
plt.close(figure)
print(f"图片　{OUTPUTS / 'loss_and_accuracy.png'}")


# %% 这个数字对吗？
# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion

print("\n这个数字对吗？")
confirm("两个类别的概率加起来是 1", abs(probas.sum().item() - 1) < 1e-6, "softmax 的 dim 不是最后一维")
if set(answered) == {1.0}:
    confirm("每条都答 spam，准确率就等于 spam 的比例", np.allclose(accuracy, always), "两次看的不是同样的 10 批")
confirm("分数相等时，交叉熵是 ln 2 = 0.693", abs(curve[200].item() - 0.6931) < 1e-4, "分数的次序反了")
confirm("答对了，交叉熵也还有坡度；准确率没有", gap.grad[400] < 0, "忘了 backward")
if path.stat().st_size == 477_907:  # 大小与原书的那份相同，才核对书上的数
    book = np.allclose(always, [0.4625, 0.45, 0.4875], atol=1e-4)
    confirm("一律答 spam，正是书上的 46.25% / 45.00% / 48.75%", book, "抽到的不是同样的 10 批")
    if WEIGHTS == "gpt2-124M.pth":
        same = np.allclose(accuracy, always)
        confirm("准确率与书上相同：46.25% / 45.00% / 48.75%", same, "新输出层的种子不是 123，或权重装错了")
        same = np.allclose(loss, [2.453, 2.583, 2.322], atol=2e-3)
        confirm("损失与书上相同：2.453 / 2.583 / 2.322", same, "损失之前多用了随机数")

# %% 动手改
# 1. 把 HEAD_SEED 换成 1、2、3：没微调过的模型，有时一律答 spam，有时一律答 ham；有混着答的吗？
# 2. 把 calc_accuracy_loader 的 [:, -1, :] 换成 [:, 3, :]，用第 4 个词元作答（多半不是填充）：
#    准确率还等于一律答 spam 的得分吗？（第二条自查会变成 ✗）
# 3. 把画图那一格的 torch.ones 改成 torch.zeros（答案换成"正常"）：曲线会左右翻转。（最后一条自查会变成 ✗）
