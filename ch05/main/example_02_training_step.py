"""第 5 章 · 5.2 节　一个训练步，拆开来看

完整的训练循环 train_model_simple 在 gpt_train.py；这里用一个几毫秒走一步的小模型，把循环里的四行逐行拆开，
再故意写错其中一行，看看会发生什么。

读完你应该能回答：
    1. 一步训练做了哪四件事？每件事之后，什么变了、什么没变？
    2. 漏掉 zero_grad 不会报错，那它表现成什么样？为什么换个优化器，样子就不同？
    3. 同样的梯度，AdamW 和 SGD 各走多远？

运行：
    python ch05/main/example_02_training_step.py
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 12 秒，0.4 GB（2 核 CPU）

形状记号（全书统一）：b 批大小　t 序列长度（token 数）　d 嵌入维度　h 头数　k 每个头的维度（k = d / h）　V 词表大小　n 样本数
"""

import copy
import math
import os
import sys
from pathlib import Path

import torch
import torch.nn as nn


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


# region 沿用 ch05/main/gpt_train.py: calc_loss_batch
def calc_loss_batch(input_batch, target_batch, model, device):
    """一批数据的损失：模型给正确的下一个词元的概率，取负对数，再对所有位置求平均。（详解见 ch05/main/gpt_train.py）"""
    input_batch, target_batch = input_batch.to(device), target_batch.to(device)
    logits = model(input_batch)  # (b, t, V)
    return nn.functional.cross_entropy(logits.flatten(0, 1), target_batch.flatten())  # (b·t, V)，(b·t,)


# endregion


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


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion
torch.set_num_threads(1)  # 每个运算都太小，分给几个 CPU 核反而更慢

# %% 5.2.1　小模型，小词表
# 按字符分词（每个字符一个编号），词表只有几十个：输出层从 5 万多列缩到几十列，一步只要几毫秒，可以放开手做对照。
path = find_data("the-verdict.txt", "story-en.txt")
text = read_text(path)
chars = sorted(set(text))
ids = torch.tensor([chars.index(char) for char in text])  # 一维，和全文一样长
inputs = ids[:-1].unfold(0, 64, 64)  # (n, t)
targets = ids[1:].unfold(0, 64, 64)  # (n, t)
config = {"vocab_size": len(chars), "context_length": 64, "emb_dim": 64, "n_heads": 2, "n_layers": 2, "drop_rate": 0.0, "qkv_bias": False}
torch.manual_seed(123)
fresh = GPTModel(config)  # 后面每个对照都从它的副本出发：起点相同，差别才说明问题
device = torch.device("cpu")
batch, answers = inputs[:8], targets[:8]  # (b, t)
print(f"【5.2】文本　{path}")
print(f"【5.2】输入　{tuple(batch.shape)}　(b, t)　词表 {len(chars)} 个字符　模型 {sum(p.numel() for p in fresh.parameters()):,} 个参数")

# %% 5.2.2　四件事，做一件看一眼
model = copy.deepcopy(fresh)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
weight = model.out_head.weight  # (V, d)　盯住输出层看
before = weight.detach().clone()

optimizer.zero_grad()  # ① 清梯度
print(f"\n【5.2】① 清梯度　梯度是 {weight.grad}")
loss = calc_loss_batch(batch, answers, model, device)  # ② 算损失：一个数，背后连着整张计算图
loss_before = loss.item()
print(f"【5.2】② 算损失　{loss_before:.4f}　（瞎猜是 ln {len(chars)} = {math.log(len(chars)):.4f}）")
loss.backward()  # ③ 求梯度：每个参数都得到一个与自己同样形状的 .grad
print(f"【5.2】③ 求梯度　梯度 {tuple(weight.grad.shape)}，大小 {weight.grad.norm():.4f}；权重动了吗？{'没有' if torch.equal(weight, before) else '动了'}")
optimizer.step()  # ④ 更新：这时权重才动
moved = (weight.detach() - before).abs()
with torch.no_grad():
    loss_after = calc_loss_batch(batch, answers, model, device).item()
print(f"【5.2】④ 更新　　每个权重平均挪了 {moved.mean():.4f}；同一批再算一次损失 {loss_after:.4f}")

# %% 5.2.3　同样的梯度，SGD 和 AdamW 各走多远
# SGD：步长 = 学习率 × 梯度。梯度大的参数走得远，梯度小的几乎不动。
# AdamW：先用梯度自己的平均大小去除它，所以第一步不论梯度大小，都走约一个学习率；另外每步把权重往 0 拉一点点（权重衰减）。
# Transformer 各层的梯度相差悬殊，一个学习率很难同时照顾，所以训练 GPT 几乎都用 AdamW。
print("\n【5.2】第一步走多远（学习率都是 3e-3，梯度相同）")
distances = {}
for name, make in {"SGD": torch.optim.SGD, "AdamW": torch.optim.AdamW}.items():
    model = copy.deepcopy(fresh)
    optimizer = make(model.parameters(), lr=3e-3, weight_decay=0.0)  # 先不要权重衰减，只看梯度的作用
    calc_loss_batch(batch, answers, model, device).backward()
    optimizer.step()
    pairs = zip(model.named_parameters(), fresh.parameters())
    distances[name] = {key: (new - old).abs().mean().item() for (key, new), old in pairs}
for key in ["tok_emb.weight", "trf_blocks.0.att.W_query.weight", "trf_blocks.0.ff.layers.0.weight", "out_head.weight"]:
    print(f"  {key:<32} SGD {distances['SGD'][key]:.1e}　AdamW {distances['AdamW'][key]:.1e}")


# %% 5.2.4　漏掉 zero_grad 会怎样
def train(optimizer_class, lr, zero_grad, steps=100):
    """从同一个起点训练若干步，记下每步的损失。

    参数:
        optimizer_class (type): 优化器的类
        lr (float): 学习率
        zero_grad (bool): 每步要不要清梯度
        steps (int): 走几步

    返回:
        list[float]: 每步更新之前的损失
    """
    model = copy.deepcopy(fresh)
    optimizer = optimizer_class(model.parameters(), lr=lr)
    losses = []
    for step in range(steps):
        rows = torch.arange(8 * step, 8 * step + 8) % len(inputs)  # 每步换 8 个样本，走完一遍从头再来
        if zero_grad:
            optimizer.zero_grad()
        loss = calc_loss_batch(inputs[rows], targets[rows], model, device)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# backward 是往 .grad 上加，不是覆盖：这样才能把几个小批的梯度攒起来再更新（梯度累积）。代价是每步都要自己清。
model = copy.deepcopy(fresh)
calc_loss_batch(batch, answers, model, device).backward()
once = model.out_head.weight.grad.clone()
calc_loss_batch(batch, answers, model, device).backward()
twice = model.out_head.weight.grad
print(f"\n【5.2】backward 两次，梯度是一次的 {(twice.norm() / once.norm()).item():.4f} 倍")

# 不清的话，每步用的是"从头到现在所有梯度的和"：方向是陈旧的，长度越来越长。
# SGD 按长度走，于是越跑越远，损失爆炸，一眼就能看出来；AdamW 把长度除掉了，只剩方向陈旧：损失停在半路，不爆炸也不报错，最难发现。
runs = {}
for name, optimizer_class, lr in [("SGD", torch.optim.SGD, 0.3), ("AdamW", torch.optim.AdamW, 3e-3)]:
    for zero_grad in (True, False):
        runs[name, zero_grad] = train(optimizer_class, lr, zero_grad)
print("\n　　　　　　　　损失：第 1、25、50、75、100 步")
for (name, zero_grad), losses in runs.items():
    print(f"  {name:<6} {'清' if zero_grad else '不清'}梯度　" + "　".join(f"{losses[step]:9.2f}" for step in (0, 24, 49, 74, 99)))

# %% 5.2.5　先让它背下一批：检查训练代码最便宜的办法
# 真正开始长时间训练之前，先拿同一批反复训练。代码没错的话，损失应当很快接近 0；降不下去，就是代码有错，不必再等。
model = copy.deepcopy(fresh)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
overfit = []
for _ in range(100):
    optimizer.zero_grad()
    loss = calc_loss_batch(batch, answers, model, device)
    loss.backward()
    optimizer.step()
    overfit.append(loss.item())
print(f"\n【5.2】同一批训练 100 步　损失 {overfit[0]:.2f} → {overfit[49]:.2f} → {overfit[-1]:.2f}")
print("接下来：gpt_train.py 里的 train_model_simple 就是这四行，外面套上轮、评估、存检查点")

# %% 这个数字对吗？
print("\n这个数字对吗？")
confirm(f"训练前的损失 {loss_before:.2f} 接近 ln {len(chars)} = {math.log(len(chars)):.2f}：词表小，起点也低", abs(loss_before - math.log(len(chars))) < 0.5, "损失没有对所有位置取平均")
confirm("走一步，同一批的损失变小", loss_after < loss_before, "学习率太大，或方向反了")
confirm("AdamW 第一步约走一个学习率 3e-3", abs(distances["AdamW"]["out_head.weight"] - 3e-3) < 1e-4, "weight_decay 没有设为 0")
confirm("backward 两次，梯度正好翻倍", torch.allclose(twice, 2 * once), "两次之间清了梯度，或模型里有 dropout")
confirm("AdamW 不清梯度，100 步后的损失明显更高", runs["AdamW", False][-1] > runs["AdamW", True][-1] + 0.3, "zero_grad 其实还是执行了")
confirm(f"100 步就能背下一批（损失 {overfit[-1]:.2f}，不到开始的四分之一）", overfit[-1] < overfit[0] / 4, "忘了 step()，或清梯度写在了 backward 与 step 之间")

# %% 动手改
# 1. 5.2.5 里，把 optimizer.zero_grad() 挪到 loss.backward() 的下一行：损失一直是 4.23，一动不动。刚求出的梯度还没用就清掉了。
# 2. 把 batch, answers 改成 inputs[:8], inputs[:8]（目标没有右移）：损失降得更快，模型却什么也没学会，只学会了抄自己的输入。
# 3. 5.2.4 里，把 AdamW 的学习率 3e-3 改成 3e-1：清了梯度也只降到 3 左右就不动了，不清则涨到几百、几千。
