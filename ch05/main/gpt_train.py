"""第 5 章 · 5.1–5.2 节　预训练：让 GPT 从胡话学到成句

读完、敲完这个脚本，你应该能不看书回答：
    1. 损失（loss）是怎么从 logits 和目标算出来的？没训练过的模型，损失为什么约等于 ln 50257？
    2. 一个训练步做了哪四件事？少了 zero_grad 会怎样？
    3. 训练损失一路下降，验证损失却停住了，说明什么？

运行：
    python ch05/main/gpt_train.py                        # 小模型，边训练边看它学，存成 ch05/outputs/gpt_mini.pth
    python ch05/main/gpt_train.py --quick                # 只训练 1 轮，看看流程
    python ch05/main/gpt_train.py --text 我的文章.txt    # 换成自己的文本
    python ch05/main/gpt_train.py --size 124M            # 原书 5.2 节的那次训练
    mini 约 90 秒，1.1 GB；124M 约 8 分钟，5 GB（2 核 CPU）

训练到一半可能断电？接着上次训练的写法见 ch05/experiments/exp_resume.py。

形状记号（全书统一）：b 批大小　t 序列长度（词元数）　d 嵌入维度　h 头数　k 每个头的维度（k = d / h）　V 词表大小
"""

import argparse
import math
import os
import sys
import time
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
# 两种规模，结构相同。124M 就是书上的训练：上下文从 1024 缩短到 256，省内存；mini 让普通笔记本一两分钟看到效果。
BASE_CONFIG = {"vocab_size": 50257, "context_length": 256, "drop_rate": 0.1, "qkv_bias": False}
MODEL_CONFIGS = {
    "mini": BASE_CONFIG | {"emb_dim": 192, "n_heads": 6, "n_layers": 4},
    "124M": BASE_CONFIG | {"emb_dim": 768, "n_heads": 12, "n_layers": 12},
}
TRAIN_SETTINGS = {
    # 学习率：每步走多远。太大会震荡甚至发散，太小学得慢；小模型禁得起大一些的。
    # eval_freq：每几步评估一次。评估也要时间，mini 步数多，评估得稀一些。
    "mini": {"learning_rate": 1.5e-3, "num_epochs": 15, "eval_freq": 10},
    "124M": {"learning_rate": 4e-4, "num_epochs": 10, "eval_freq": 5},
}
QUICK_SETTINGS = {"mini": {"num_epochs": 1, "eval_freq": 3}, "124M": {"num_epochs": 1}}  # 加了 --quick，换掉这几项
BATCH_SIZE = 2  # 书上为了省内存取 2；真正的预训练常用几百，梯度更稳
WEIGHT_DECAY = 0.1  # 权重衰减：每步把权重往 0 拉一点点，不让它们长得太大，减轻过拟合
EVAL_ITER = 5  # 评估时每个数据集只看 5 批，快；想要准确的损失就看全部
# 每轮结束时让模型接着写的开头。用中文文本训练，就换成中文的；一个汉字常占两三个词元，没学会时拼不成字，印出来是 �。
START_CONTEXT = "Every effort moves you"
OUTPUTS = Path(__file__).resolve().parents[1] / "outputs"


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


# region 沿用（含注释） ch05/main: text_to_token_ids, token_ids_to_text, calc_loss_batch, calc_loss_loader
def text_to_token_ids(text, tokenizer):
    """文本 → 模型的输入，(1, t) 的词元编号。

    参数:
        text (str): 文本
        tokenizer (tiktoken.Encoding): 分词器

    返回:
        Tensor: 词元编号，(1, t)；模型只收成批的输入，一句话就是批大小 1
    """
    encoded = tokenizer.encode(text, allowed_special={"<|endoftext|>"})
    return torch.tensor(encoded).unsqueeze(0)  # (1, t)


def token_ids_to_text(token_ids, tokenizer):
    """模型的输出 → 文本。

    参数:
        token_ids (Tensor): 词元编号，(1, t) 或 (t,)
        tokenizer (tiktoken.Encoding): 分词器

    返回:
        str: 文本
    """
    return tokenizer.decode(token_ids.squeeze(0).tolist())


def calc_loss_batch(input_batch, target_batch, model, device):
    """一批的损失：模型给正确的下一个词元的概率，取对数、取负，再对所有位置求平均。

    参数:
        input_batch, target_batch (Tensor): 输入和目标的编号，都是 (b, t)；目标是输入右移一位
        model (nn.Module): 语言模型，(b, t) → (b, t, V)
        device (torch.device): 在哪里算

    返回:
        Tensor: 一个数，带着计算图，可以 backward

    出处: 原书 5.1.3 节
    """
    input_batch, target_batch = input_batch.to(device), target_batch.to(device)
    logits = model(input_batch)  # (b, t, V)
    # cross_entropy 要的是许多道选择题：每个位置一道，V 个选项，一个答案；在哪一批、哪个位置并不重要，所以展平。
    return nn.functional.cross_entropy(logits.flatten(0, 1), target_batch.flatten())  # (b·t, V)，(b·t,)


def calc_loss_loader(data_loader, model, device, num_batches=None):
    """一个数据集的平均损失。

    参数:
        data_loader (DataLoader): 一批批地给出输入和目标
        model (nn.Module): 语言模型
        device (torch.device): 在哪里算
        num_batches (int 或 None): 只看前几批，不够就看全部；None 表示全部

    返回:
        float: 平均损失；一批都没有时为 nan

    出处: 原书 5.1.3 节
    """
    losses = []
    for input_batch, target_batch in islice(data_loader, num_batches):
        loss = calc_loss_batch(input_batch, target_batch, model, device)
        losses.append(loss.item())  # .item() 只留下数字；留着张量的话，每一批的计算图都会占着内存
    return sum(losses) / len(losses) if losses else float("nan")


# endregion


# region 沿用（含注释） ch05/main: evaluate_model, generate_and_print_sample, train_model_simple, plot_losses
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


# endregion


# region 沿用 setup/find_data.py: find_data, read_text
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


def pretrain(args):
    """数据 → 模型 → 训练 → 画图、存权重。

    参数:
        args (argparse.Namespace): 命令行参数，见 main

    异常:
        ValueError: 参数或文本有问题，或损失成了 nan
        OSError: 写不了文件
    """
    config = MODEL_CONFIGS[args.size]
    settings = TRAIN_SETTINGS[args.size] | (QUICK_SETTINGS[args.size] if args.quick else {})
    num_epochs = settings["num_epochs"] if args.epochs is None else args.epochs
    if num_epochs < 1:
        raise ValueError(f"--epochs 至少是 1，不能是 {num_epochs}")
    path = find_data("the-verdict.txt", "story-en.txt") if args.text is None else Path(args.text)
    # 换了文本、轮数，或只是 --quick，名字里就带上：第 6、7 章要用的 gpt_mini.pth 不会被试验盖掉。
    name = args.size + (f"_{path.stem}" if args.text else "") + (f"_{num_epochs}" if args.epochs else "") + "_quick" * args.quick
    checkpoint, picture = OUTPUTS / f"gpt_{name}.pth", OUTPUTS / f"loss_{name}.png"
    OUTPUTS.mkdir(parents=True, exist_ok=True)
    device = pick_device(args.device)

    # ① 数据。前 90% 训练，后 10% 验证：验证集模型从没见过，它的损失才分得出"学会了"还是"背下了"。
    text, t = read_text(path), config["context_length"]
    tokenizer = tiktoken.get_encoding("gpt2")
    split = int(0.90 * len(text))
    train_text, val_text = text[:split], text[split:]
    for part, share, samples in [(train_text, "前 90%", BATCH_SIZE), (val_text, "后 10%", 1)]:
        count = text_to_token_ids(part, tokenizer).numel()
        if count <= samples * t:
            raise ValueError(f"{path} 太短：{share}只有 {count} 个词元，至少要 {samples * t + 1} 个，请换长一点的文本")
    train_loader = create_dataloader_v1(train_text, BATCH_SIZE, max_length=t, stride=t)
    val_loader = create_dataloader_v1(val_text, BATCH_SIZE, max_length=t, stride=t, shuffle=False, drop_last=False)
    print(f"文本　{path}（{len(text):,} 个字符；一轮 {len(train_loader)} 批，验证 {len(val_loader)} 批）")

    # ② 模型和优化器。种子、创建的次序与原书相同，随机数才对得上。
    torch.manual_seed(123)
    model = GPTModel(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings["learning_rate"], weight_decay=WEIGHT_DECAY)
    total_params = sum(p.numel() for p in model.parameters())
    print(f"模型　{args.size}，{total_params:,} 个参数，在 {device} 上训练 {num_epochs} 轮")

    # ③ 训练前看一眼。打乱数据也会用掉随机数；fork_rng 里用掉的不算数，后面的训练仍与原书相同。
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        initial, initial_val = evaluate_model(model, train_loader, val_loader, device, eval_iter=None)
    print(f"\n训练前　训练损失 {initial:.3f}　验证损失 {initial_val:.3f}")
    generate_and_print_sample(model, tokenizer, device, START_CONTEXT)

    # ④ 训练
    print()
    start = time.perf_counter()
    train_losses, val_losses, tokens_seen = train_model_simple(
        model, train_loader, val_loader, optimizer, device, num_epochs, settings["eval_freq"], EVAL_ITER,
        START_CONTEXT, tokenizer,
    )
    print(f"\n训练用了 {time.perf_counter() - start:.0f} 秒")

    # ⑤ 存权重，画图。存的是训练到最后的权重，不是验证损失最低时的：书上也是这样，要的是看清过拟合。
    # 先写到临时文件，写完整了再改名：写到一半断电，旧的那份还在，也不会冒出半个新的。
    part = checkpoint.with_name(checkpoint.name + ".part")
    epochs_seen = torch.linspace(0, num_epochs, len(train_losses))  # 照原书，均匀地分；差不到一轮，准确的看上面那条横轴
    try:
        torch.save({"config": config, "model": model.state_dict()}, part)
        os.replace(part, checkpoint)
        plot_losses(epochs_seen, tokens_seen, train_losses, val_losses).savefig(picture, dpi=150)
    except (OSError, RuntimeError):  # 磁盘满了，torch.save 报的是 RuntimeError
        part.unlink(missing_ok=True)
        raise OSError(f"写不进 {OUTPUTS}：磁盘满了，或没有写的权限") from None
    print(f"权重　　　{checkpoint}\n损失曲线　{picture}")

    # 没训练过的模型，给每个词元的概率都在 1 / V 上下，损失就在 -ln(1 / V) = ln V 上下。
    print("\n这个数字对吗？")
    chance, gap = math.log(config["vocab_size"]), val_losses[-1] - train_losses[-1]
    guessing = f"训练前的损失 {initial:.2f} 接近 ln 50257 = {chance:.2f}：等于在 50257 个词元里瞎猜"
    confirm(guessing, abs(initial - chance) < 0.5, "损失没有对所有位置取平均")
    if path.name == "the-verdict.txt" and args.size == "124M":
        same = abs(initial - 10.98758) < 1e-3 and abs(initial_val - 10.98110) < 1e-3
        confirm("训练前的损失与原书相同：10.988 / 10.981", same, "种子不同，或创建各层的次序变了")
    confirm(f"训练损失降到 {train_losses[-1]:.2f}", train_losses[-1] < initial, "学习率太大，或忘了 optimizer.step()")
    if num_epochs >= 8 and args.text is None:  # 自己的文本，若是重复的话多，验证集也猜得中
        confirm(f"验证损失比训练损失高 {gap:.1f}：文本太短，模型在背书（过拟合），这是正常的", gap > 0.5, "验证集混进训练集了")


def main():
    """训练一个 GPT，边训练边看它说话。"""
    parser = argparse.ArgumentParser(description="5.1–5.2 节　预训练一个 GPT")
    parser.add_argument("--size", default="mini", choices=MODEL_CONFIGS, help="mini（默认）或 124M（原书的规模）")
    parser.add_argument("--text", help="训练文本，UTF-8 编码（默认：找到的 the-verdict.txt，没有就用自带的英文短篇）")
    parser.add_argument("--epochs", type=int, help="几轮（默认：mini 15，124M 10）；文件名里会带上")
    parser.add_argument("--device", default="auto", help="auto、mps、cuda 或 cpu（默认：auto；核对原书的数字请用 cpu）")
    parser.add_argument("--quick", action="store_true", help="只训练 1 轮，看看流程；另存一个文件")
    args = parser.parse_args()
    try:
        pretrain(args)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("\n停下了。权重要到训练完才存，写到一半的不会盖掉以前的")
        sys.exit(130)


if __name__ == "__main__":
    main()
