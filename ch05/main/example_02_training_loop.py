"""第 5 章 · 5.2 节　训练循环：从走一步，到学会说话

读完你应该能回答：
    1. 一步训练做了哪四件事？每件事之后，什么变了、什么没变？
    2. 漏掉 zero_grad 不会报错，那它表现成什么样？train() 和 eval() 又差在哪里？
    3. 训练损失降得快，验证损失跟不上，两者越离越远，说明什么？

运行：
    python ch05/main/example_02_training_loop.py        # 图片写到 ch05/outputs/
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 70 秒，1.5 GB（2 核 CPU）

形状记号（全书统一）：b 批大小　t 序列长度（词元数）　d 嵌入维度　h 头数　k 每个头的维度（k = d / h）　V 词表大小
"""

import math
import os
import sys
from itertools import islice
from pathlib import Path

import matplotlib.pyplot as plt
import tiktoken
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from matplotlib.ticker import MaxNLocator
from torch.utils.data import DataLoader, Dataset

# 改这里
# mini：结构与 GPT-2 相同，只是窄一些、浅一些，普通笔记本几十秒就能看到它在学。书上的 124M 见 gpt_train.py --size 124M。
CONFIG = {
    "vocab_size": 50257,
    "context_length": 256,
    "emb_dim": 192,
    "n_heads": 6,
    "n_layers": 4,
    "drop_rate": 0.1,
    "qkv_bias": False,
}
LEARNING_RATE = 1.5e-3  # 每步走多远：太大会震荡甚至发散，太小学得慢；模型小，禁得起比书上的 4e-4 大
NUM_EPOCHS = 5
EVAL_FREQ, EVAL_ITER = 5, 5  # 每 5 步评估一次；训练集、验证集各看 5 批，不足 5 批就全看
START_CONTEXT = "Every effort moves you"
here = Path(__file__ if "__file__" in globals() else "x").resolve()  # 笔记本里没有 __file__，就从当前文件夹往上找
OUTPUTS = next((folder / "ch05" for folder in here.parents if (folder / "ch05").is_dir()), Path()) / "outputs"


# region 沿用 ch02/main: GPTDatasetV1, create_dataloader_v1
class GPTDatasetV1(Dataset):
    """把一段长文本切成许多等长的"输入—目标"样本。（详解见 ch02/main/example_03_sliding_window.py）"""

    def __init__(self, txt, tokenizer, max_length, stride):
        token_ids = tokenizer.encode(txt, allowed_special={"<|endoftext|>"})
        if len(token_ids) <= max_length:
            raise ValueError(f"文本只有 {len(token_ids)} 个词元，凑不出一个长 {max_length} 的样本（目标还要多 1 个），请换长一点的文本或改小 max_length")
        ids = torch.tensor(token_ids)
        self.input_ids = ids[:-1].unfold(0, max_length, stride)  # (n, t)
        self.target_ids = ids[1:].unfold(0, max_length, stride)  # (n, t)

    def __len__(self):
        return len(self.input_ids)

    def __getitem__(self, idx):
        return self.input_ids[idx], self.target_ids[idx]


def create_dataloader_v1(txt, batch_size=4, max_length=256, stride=128, shuffle=True, drop_last=True, num_workers=0):
    """文本 → 一批一批的（输入，目标）。（详解见 ch02/main/example_03_sliding_window.py）"""
    dataset = GPTDatasetV1(txt, tiktoken.get_encoding("gpt2"), max_length, stride)
    return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, drop_last=drop_last, num_workers=num_workers)


# endregion


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


# region 沿用 ch04/main: LayerNorm, GELU, FeedForward, TransformerBlock, GPTModel, generate_text_simple
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


def generate_text_simple(model, idx, max_new_tokens, context_size):
    """贪心解码（greedy decoding）：每次都选分数最高的那个词元，接到后面，再问一次。（详解见 ch04/main/example_07_generate_text.py）"""
    for _ in range(max_new_tokens):
        idx_cond = idx[:, -context_size:]  # (b, t)
        with torch.no_grad():
            logits = model(idx_cond)  # (b, t, V)
        logits = logits[:, -1, :]  # (b, V)
        idx_next = torch.argmax(logits, dim=-1, keepdim=True)  # (b, 1)
        idx = torch.cat((idx, idx_next), dim=1)  # (b, t + 1)
    return idx


# endregion


# region 沿用 ch05/main: text_to_token_ids, token_ids_to_text, calc_loss_batch, calc_loss_loader
def text_to_token_ids(text, tokenizer):
    """文本 → 模型的输入，(1, t) 的词元编号。（详解见 ch05/main/example_01_loss.py）"""
    encoded = tokenizer.encode(text, allowed_special={"<|endoftext|>"})
    return torch.tensor(encoded).unsqueeze(0)  # (1, t)


def token_ids_to_text(token_ids, tokenizer):
    """模型的输出 → 文本。（详解见 ch05/main/example_01_loss.py）"""
    return tokenizer.decode(token_ids.squeeze(0).tolist())


def calc_loss_batch(input_batch, target_batch, model, device):
    """一批的损失：模型给正确的下一个词元的概率，取对数、取负，再对所有位置求平均。（详解见 ch05/main/example_01_loss.py）"""
    input_batch, target_batch = input_batch.to(device), target_batch.to(device)
    logits = model(input_batch)  # (b, t, V)
    return nn.functional.cross_entropy(logits.flatten(0, 1), target_batch.flatten())  # (b·t, V)，(b·t,)


def calc_loss_loader(data_loader, model, device, num_batches=None):
    """一个数据集的平均损失。（详解见 ch05/main/example_01_loss.py）"""
    losses = []
    for input_batch, target_batch in islice(data_loader, num_batches):
        loss = calc_loss_batch(input_batch, target_batch, model, device)
        losses.append(loss.item())
    return sum(losses) / len(losses) if losses else float("nan")


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

# %% 数据、模型、优化器
tokenizer = tiktoken.get_encoding("gpt2")
path = find_data("the-verdict.txt", "story-en.txt")
text_data = path.read_text(encoding="utf-8")
split_idx = int(0.90 * len(text_data))  # 前九成训练，后一成验证，与 5.1.3 节相同
t = CONFIG["context_length"]
torch.manual_seed(123)
train_loader = create_dataloader_v1(text_data[:split_idx], batch_size=2, max_length=t, stride=t)
val_loader = create_dataloader_v1(
    text_data[split_idx:], batch_size=2, max_length=t, stride=t, shuffle=False, drop_last=False
)
device = torch.device("cpu")
model = GPTModel(CONFIG)
# 梯度（gradient）：每个参数一个数，这个参数增加一点点时，损失涨得多快。要让损失变小，就得逆着它走；优化器决定走多远。
# SGD（随机梯度下降）：参数 −= 学习率 × 梯度，减号就是"逆着走"。AdamW 先用每个参数自己的梯度的平均大小去除，
# 梯度大的、小的都走得差不多远：Transformer 各层的梯度相差悬殊，所以训练 GPT 几乎都用它。
# weight_decay：每步把权重往 0 拉一点点，不让它们长得太大，减轻过拟合。
optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1)
print(f"【5.2】文本　{path}")
total_params = sum(p.numel() for p in model.parameters())
print(f"一轮 {len(train_loader)} 批，验证 {len(val_loader)} 批；模型 {total_params:,} 个参数")

# %% 走一步，四件事，做一件看一眼
input_batch, target_batch = next(iter(train_loader))  # 都是 (b, t)
weight = model.out_head.weight  # (V, d)　盯住输出层看
before = weight.detach().clone()  # weight 是参数本身，更新会直接改它，所以先留一份副本

model.eval()  # 先关掉 dropout，走一步前后的损失才能比
# 为什么要 ①：backward 是往 .grad 上加，不是覆盖。好处是能攒几个小批的梯度再更新（梯度累积），代价是每步要自己清。
calc_loss_batch(input_batch, target_batch, model, device).backward()
once = weight.grad.clone()
calc_loss_batch(input_batch, target_batch, model, device).backward()  # 没有清，又来一次
twice = weight.grad.clone()
optimizer.zero_grad()
ratio = (twice.norm() / once.norm()).item()
print(f"\n① 清梯度　不清，同一批 backward 两次，梯度是一次的 {ratio:.4f} 倍；清了，是 {weight.grad}")
# 还没训练，损失约是 ln V，但总要高一点：logits 是随机的，不会全相等，等于没有根据地偏向一些词元，平均只会更差。
# logits 的方差是 σ² 时，约高 σ²/2；nn.Linear 默认的初始化下，σ² 约 1/3。
# 计算图（computation graph）：PyTorch 记下的"损失是怎样一步步算出来的"；backward 沿着它倒着走，求出每个参数的梯度。
loss = calc_loss_batch(input_batch, target_batch, model, device)
print(f"② 算损失　{loss.item():.3f}　背后连着整张计算图；一视同仁地瞎猜是 ln V = {math.log(CONFIG['vocab_size']):.3f}")
loss.backward()
still = torch.equal(weight, before)
print(f"③ 求梯度　梯度 {tuple(weight.grad.shape)}，与权重同样的形状；权重动了吗？{'没有' if still else '动了'}")
optimizer.step()
moved = (weight.detach() - before).abs().mean().item()
with torch.no_grad():
    loss_after = calc_loss_batch(input_batch, target_batch, model, device).item()
# AdamW 的第一步，"梯度的平均大小"就是这一个梯度的大小，除完只剩正负号：每个权重都走约一个学习率。
print(f"④ 更新　　输出层的每个权重平均挪了 {moved:.5f}（学习率 {LEARNING_RATE}）；同一批的损失变成 {loss_after:.3f}")

# %% 漏掉 zero_grad 会怎样
# 要训练好几遍，换一个小得多的模型：按字符分词，词表只有几十个。
chars = sorted(set(text_data))
ids = torch.tensor([chars.index(char) for char in text_data])
char_inputs, char_targets = ids[:-1].unfold(0, 64, 64), ids[1:].unfold(0, 64, 64)  # (n, 64)
tiny = {**CONFIG, "vocab_size": len(chars), "context_length": 64, "emb_dim": 64, "n_heads": 2, "n_layers": 2}


def losses_of_100_steps(optimizer_class, lr, zero_grad):
    """从同一个起点训练 100 步。

    参数:
        optimizer_class (type): 优化器的类
        lr (float): 学习率
        zero_grad (bool): 每步要不要清梯度

    返回:
        list[float]: 每步更新之前的损失
    """
    torch.manual_seed(123)
    model = GPTModel(tiny)
    optimizer = optimizer_class(model.parameters(), lr=lr)
    losses = []
    for step in range(100):
        rows = torch.arange(8 * step, 8 * step + 8) % len(char_inputs)  # 每步换 8 个样本，走完一遍从头再来
        if zero_grad:
            optimizer.zero_grad()
        loss = calc_loss_batch(char_inputs[rows], char_targets[rows], model, device)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# 不清，每步用的就是"从头到现在所有梯度的和"：方向是陈旧的，长度越来越长。
# SGD 按长度走，越跑越远，一眼就看得出来；AdamW 把长度除掉了，只剩方向陈旧：不报错，损失也降过，最难发现。
runs = {}
print("\n　　　　　　　　损失：第 1、25、50、75、100 步")
for name, optimizer_class, lr in [("SGD", torch.optim.SGD, 0.3), ("AdamW", torch.optim.AdamW, 3e-3)]:
    for zero_grad, title in [(True, "清梯度　"), (False, "不清梯度")]:
        losses = runs[name, zero_grad] = losses_of_100_steps(optimizer_class, lr, zero_grad)
        row = "　".join(f"{losses[step]:8.2f}" for step in (0, 24, 49, 74, 99))
        print(f"  {name:<6} {title}　{row}")

# %% train() 和 eval()：同一批算两次，损失一样吗
# 训练时 dropout 随机丢掉一成的激活值，每次丢的不同；评估和生成时要关掉，否则量出来的不是模型的真实水平。
with torch.no_grad():
    model.train()
    noisy = [calc_loss_batch(input_batch, target_batch, model, device).item() for _ in range(2)]
    model.eval()
    quiet = [calc_loss_batch(input_batch, target_batch, model, device).item() for _ in range(2)]
print(f"\ntrain() 模式下算两次　{noisy[0]:.4f}　{noisy[1]:.4f}")
print(f"eval() 模式下算两次　 {quiet[0]:.4f}　{quiet[1]:.4f}")


# %% 评估：训练集和验证集上各看几批
def evaluate_model(model, train_loader, val_loader, device, eval_iter):
    """在训练集和验证集上各看几批，估计损失。

    参数:
        model (nn.Module): 语言模型
        train_loader, val_loader (DataLoader): 训练集；验证集，它从不用来更新权重
        device (torch.device): 在哪里算
        eval_iter (int): 各看几批：看得多就准，也就慢

    返回:
        tuple[float, float]: 训练损失、验证损失

    出处: 原书 5.2 节
    """
    model.eval()  # 关掉 dropout：评估要的是模型的真实水平
    with torch.no_grad():  # 不求导，就不必记住中间结果，省内存也省时间
        train_loss = calc_loss_loader(train_loader, model, device, num_batches=eval_iter)
        val_loss = calc_loss_loader(val_loader, model, device, num_batches=eval_iter)
    model.train()  # 别忘了开回来，否则后面的训练都没有 dropout
    return train_loss, val_loss


train_loss, val_loss = evaluate_model(model, train_loader, val_loader, device, EVAL_ITER)
print(f"\n走了一步的模型　训练损失 {train_loss:.3f}　验证损失 {val_loss:.3f}")


# %% 看它说什么
def generate_and_print_sample(model, tokenizer, device, start_context):
    """让模型接着提示词写 50 个词元，印成一行：看数字不如看它说的话。

    参数:
        model (nn.Module): 语言模型
        tokenizer (tiktoken.Encoding): 分词器
        device (torch.device): 在哪里算
        start_context (str): 提示词

    出处: 原书 5.2 节
    """
    model.eval()
    context_size = model.pos_emb.weight.shape[0]  # 位置嵌入有几行，模型就最多看几个词元
    encoded = text_to_token_ids(start_context, tokenizer).to(device)
    token_ids = generate_text_simple(model, encoded, max_new_tokens=50, context_size=context_size)
    print("    " + token_ids_to_text(token_ids, tokenizer).replace("\n", " "))  # 换行印成空格
    model.train()


generate_and_print_sample(model, tokenizer, device, START_CONTEXT)


# %% 训练循环：四件事，外面套上批、轮，隔几步评估一次
def train_model_simple(
    model, train_loader, val_loader, optimizer, device, num_epochs, eval_freq, eval_iter, start_context, tokenizer
):
    """训练循环：一批批地看数据，每批算损失、求梯度、更新权重。

    参数:
        model (nn.Module): 语言模型
        train_loader, val_loader (DataLoader): 训练集，用来更新权重；验证集，只用来评估
        optimizer (torch.optim.Optimizer): 优化器，管着 model 的全部参数
        device (torch.device): 在哪里算
        num_epochs (int): 几轮；一轮（epoch）把训练集看一遍
        eval_freq, eval_iter (int): 每几步评估一次；每次各看几批
        start_context, tokenizer: 每轮结束时，让模型接着写的提示词；分词器

    返回:
        tuple[list, list, list]: 每次评估的训练损失、验证损失，以及当时已看过的词元数

    异常:
        ValueError: 损失成了 nan 或无穷大

    出处: 原书 5.2 节
    """
    train_losses, val_losses, track_tokens_seen = [], [], []
    tokens_seen, global_step = 0, -1  # 第一步是第 0 步，所以刚走完第一步就评估一次

    for epoch in range(num_epochs):
        model.train()  # 打开 dropout
        for input_batch, target_batch in train_loader:
            optimizer.zero_grad()  # ① 清梯度：backward 是往上加，不清，上一批的梯度就混进这一批
            loss = calc_loss_batch(input_batch, target_batch, model, device)  # ② 前向：算损失
            if not loss.isfinite():  # nan 会传染：拿它更新一次，所有的权重就都成了 nan，再也救不回来
                raise ValueError(f"第 {global_step + 1} 步的损失是 {loss.item()}，训练停下：学习率多半太大了，改小再来")
            loss.backward()  # ③ 反向：损失对每个参数的梯度
            optimizer.step()  # ④ 更新：每个参数朝着让损失变小的方向走一点
            tokens_seen += input_batch.numel()
            global_step += 1

            if global_step % eval_freq == 0:
                train_loss, val_loss = evaluate_model(model, train_loader, val_loader, device, eval_iter)
                train_losses.append(train_loss)
                val_losses.append(val_loss)
                track_tokens_seen.append(tokens_seen)
                print(f"第 {epoch + 1:2} 轮　第 {global_step:3} 步　训练损失 {train_loss:.3f}　验证损失 {val_loss:.3f}")

        generate_and_print_sample(model, tokenizer, device, start_context)  # 每轮结束，看看它会说什么了

    return train_losses, val_losses, track_tokens_seen


# %% 训练一个新的
# 重新开始。模型的初始值、打乱的次序、dropout 依次取用同一串随机数；评估也要取几个（训练集每次都重新打乱），
# 所以种子相同、EVAL_FREQ 不同，后面的损失也会不同。
torch.manual_seed(123)
model = GPTModel(CONFIG).to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1)
print()
train_losses, val_losses, tokens_seen = train_model_simple(
    model, train_loader, val_loader, optimizer, device, NUM_EPOCHS, EVAL_FREQ, EVAL_ITER, START_CONTEXT, tokenizer
)
# 两个损失一起降，是在学；拉开的差距，是在背。训练损失还在降、验证损失不降了，就是过拟合（overfitting）：
# 这两万个字符的文本，多训练几轮就背得下来。


# %% 画出来
def plot_losses(epochs_seen, tokens_seen, train_losses, val_losses):
    """画训练损失和验证损失，下方横轴是轮数，上方横轴是看过的词元数。

    参数:
        epochs_seen (Tensor): 每次评估时的轮数
        tokens_seen (list[int]): 每次评估时看过的词元数
        train_losses, val_losses (list[float]): 训练损失、验证损失

    返回:
        Figure: 画好的图，用 savefig 存成文件

    出处: 原书 5.2 节
    """
    figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
    axis.plot(epochs_seen, train_losses, label="训练损失")
    axis.plot(epochs_seen, val_losses, linestyle="-.", label="验证损失")
    axis.set_xlabel("轮（epoch）")
    axis.set_ylabel("损失")
    axis.legend()
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))  # 轮数只标整数
    top = axis.twiny()  # 第二条横轴，与第一条共用纵轴
    top.plot(tokens_seen, train_losses, alpha=0)  # 画一条看不见的线，只为让两条横轴的刻度对齐
    top.set_xlabel("看过的词元数")
    return figure


OUTPUTS.mkdir(exist_ok=True)
picture = OUTPUTS / "training_loop.png"
# 书上是 torch.linspace(0, NUM_EPOCHS, len(train_losses))：均匀地分，只是近似。这里用看过的词元数除以一轮的词元数。
epochs_seen = torch.tensor(tokens_seen) / (len(train_loader) * input_batch.numel())  # (n,)
plot_losses(epochs_seen, tokens_seen, train_losses, val_losses).savefig(picture, dpi=150)
print(f"\n图片　{picture}")

# %% 这个数字对吗？
print("\n这个数字对吗？")
confirm(
    f"AdamW 的第一步约走一个学习率：{moved:.5f} 与 {LEARNING_RATE}",
    abs(moved / LEARNING_RATE - 1) < 0.1,
    "换了优化器，或这一步之前已经走过",
)
confirm(
    f"走一步，同一批的损失变小：{loss.item():.3f} → {loss_after:.3f}",
    loss_after < loss.item(),
    "学习率太大，或梯度在更新之前就清掉了",
)
confirm("backward 两次，梯度正好翻倍", torch.allclose(twice, 2 * once), "两次之间清了梯度，或 dropout 没关")
confirm(
    f"AdamW 不清梯度，100 步后的损失高得多：{runs['AdamW', False][-1]:.2f} 对 {runs['AdamW', True][-1]:.2f}",
    runs["AdamW", False][-1] > runs["AdamW", True][-1] + 0.3,
    "zero_grad 其实还是执行了",
)
as_expected = noisy[0] != noisy[1] and quiet[0] == quiet[1]
confirm("train() 下两次不同，eval() 下两次相同", as_expected, "drop_rate 是 0，或两种模式弄反了")
confirm(
    f"训练损失从 {train_losses[0]:.2f} 降到 {train_losses[-1]:.2f}",
    train_losses[-1] < train_losses[0] - 1,
    "少了四件事里的一件，或学习率太大、太小",
)
first, last = val_losses[0] - train_losses[0], val_losses[-1] - train_losses[-1]
claim = f"验证损失与训练损失的差距从 {first:.2f} 拉大到 {last:.2f}"
confirm(claim, last > max(first, 0), "验证集混进了训练集")

# %% 动手改
# 1. 走一步那一格里，在 optimizer.step() 前面加一行 optimizer.zero_grad()：权重一动不动，损失也不变，自查里两条变成 ✗。
#    刚求出的梯度还没用就清掉了，可是什么也不报错。
# 2. losses_of_100_steps 里，把 char_targets[rows] 改成 char_inputs[rows]（目标没有右移）：损失降得飞快，
#    模型却什么也没学会，只学会了抄自己的输入。
# 3. 把 LEARNING_RATE 改成 1000：程序会报错停下（Traceback，最后一行是 ValueError），这正是要看的：
#    损失成了 nan，训练循环就停下，说出是第几步，免得白白训练下去。
# 4. 把 NUM_EPOCHS 改成 15：训练损失降到 1 以下，验证损失却先降后升。从第几轮起，就只是在背了？
