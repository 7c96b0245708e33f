"""第 7 章 · 7.6 节　在指令数据上微调

读完你应该能回答：
    1. 微调用的训练循环，与第 5 章预训练的差在哪里？
    2. 微调之前的损失，为什么可以比瞎猜的 10.82 低，也可以差不多？
    3. 损失降下来了，先学会的是格式，还是答案？

运行：
    python ch07/main/example_04_finetune.py        # 先训练 mini：python ch05/main/gpt_train.py；图和模型写到 ch07/outputs/
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 80 秒，1.1 GB（2 核 CPU）

形状记号：b 批大小　t 序列长度（词元数）　d 嵌入维度　h 头数　k 每个头的维度（k = d / h）　V 词表大小　n 个数
"""

import json
import math
import os
import sys
import time
import urllib.request
from functools import partial
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
# 书上微调 355M：学习率 5e-5，2 轮，批大小 8，GPU 上约 1 分钟；用 gpt_instruction_finetuning.py --size 355M。
# mini 只读过一篇小说，是从头学这批题，所以步子大二十倍；批小一半，同样的时间里就能多更新一倍的步数。
LEARNING_RATE, NUM_EPOCHS, BATCH_SIZE = 1e-3, 1, 4
EVAL_FREQ, EVAL_ITER = 30, 5  # 每 30 步评估一次，训练集、验证集各看 5 批
DEVICE = torch.device("cpu")  # 有 GPU 可以改成 "mps" 或 "cuda"
URL = "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/ch07/01_main-chapter-code/instruction-data.json"
here = Path(__file__ if "__file__" in globals() else "x").resolve()  # 笔记本里没有 __file__，就从当前文件夹往上找
OUTPUTS = next((folder / "ch07" for folder in here.parents if (folder / "ch07").is_dir()), Path()) / "outputs"


# region 沿用 ch07/main: download_and_load_file, format_input, InstructionDataset, custom_collate_fn, check_trainable
def download_and_load_file(file_path, url):
    """读指令数据；file_path 不存在，就先从 url 下载。（详解见 ch07/main/example_01_dataset_and_prompt.py）"""
    if not os.path.exists(file_path):
        with urllib.request.urlopen(url, timeout=30) as response:
            text_data = response.read().decode("utf-8")
        with open(file_path, "w", encoding="utf-8") as file:
            file.write(text_data)
    advice = f"；全部问题和转换的办法：python setup/check_data.py {file_path}"
    try:
        with open(file_path, encoding="utf-8-sig") as file:
            data = json.load(file)
    except (ValueError, RecursionError) as error:
        place = f"（第 {error.lineno} 行第 {error.colno} 个字符）" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f"{file_path} 不是 UTF-8 编码的 JSON{place}{advice}") from None
    if not isinstance(data, list) or not data:
        raise ValueError(f"{file_path} 里应是一个列表，至少一条{advice}")
    for number, entry in enumerate(data, start=1):
        texts = [entry.get(key) for key in ("instruction", "input", "output")] if isinstance(entry, dict) else [None]
        if not all(isinstance(text, str) and "<|endoftext|>" not in text for text in texts) or not texts[0].strip():
            wanted = "instruction（不能是空的）、input、output 三段文字，不含 <|endoftext|>"
            raise ValueError(f"{file_path} 的第 {number} 条应有 {wanted}{advice}")
        whole = json.dumps(entry, ensure_ascii=False)
        if whole.encode("utf-8", "ignore").decode("utf-8") != whole:
            raise ValueError(f"{file_path} 的第 {number} 条有半个表情符号（孤立的代理项）{advice}")
    return data


def format_input(entry):
    """一条数据 → Alpaca 格式的提示词，到回答之前为止。（详解见 ch07/main/example_01_dataset_and_prompt.py）"""
    instruction_text = (
        f"Below is an instruction that describes a task. "
        f"Write a response that appropriately completes the request."
        f"\n\n### Instruction:\n{entry['instruction']}"
    )
    input_text = f"\n\n### Input:\n{entry['input']}" if entry["input"] else ""
    return instruction_text + input_text


class InstructionDataset(Dataset):
    """指令数据集：提示词接上回答，整段变成词元编号。长短不一，凑批时再填充。（详解见 ch07/main/example_02_collate.py）"""

    def __init__(self, data, tokenizer):
        self.data = data
        self.encoded_texts = []
        for entry in data:
            instruction_plus_input = format_input(entry)
            response_text = f"\n\n### Response:\n{entry['output']}"
            full_text = instruction_plus_input + response_text
            self.encoded_texts.append(tokenizer.encode(full_text))

    def __getitem__(self, index):
        return self.encoded_texts[index]

    def __len__(self):
        return len(self.data)


def custom_collate_fn(batch, pad_token_id=50256, ignore_index=-100, allowed_max_length=None, device="cpu"):
    """把长短不一的几条凑成一批，同时做好目标。（详解见 ch07/main/example_02_collate.py）"""
    batch_max_length = max(len(item) + 1 for item in batch)
    inputs_lst, targets_lst = [], []
    for item in batch:
        new_item = item.copy()
        new_item += [pad_token_id]
        padded = new_item + [pad_token_id] * (batch_max_length - len(new_item))
        inputs = torch.tensor(padded[:-1])  # (t,)
        targets = torch.tensor(padded[1:])  # (t,)
        mask = targets == pad_token_id
        indices = torch.nonzero(mask).squeeze()  # (n,) 或 ()
        if indices.numel() > 1:
            targets[indices[1:]] = ignore_index
        if allowed_max_length is not None:
            inputs = inputs[:allowed_max_length]
            targets = targets[:allowed_max_length]
        inputs_lst.append(inputs)
        targets_lst.append(targets)
    return torch.stack(inputs_lst).to(device), torch.stack(targets_lst).to(device)  # (b, t)，(b, t)


def check_trainable(data, tokenizer, context_length, batch_size, path):
    """凑得出一批吗，有回答可学吗，每一条的回答都留得下吗；不行就说是第几条，不训练。（详解见 ch07/main/example_03_loaders_and_start_model.py）"""
    advice = f"；全部问题和转换的办法：python setup/check_data.py {path} --context {context_length}"
    if int(len(data) * 0.85) < batch_size or int(len(data) * 0.1) < 1:
        raise ValueError(f"{path} 只有 {len(data)} 条，切成三份，凑不出一批训练数据（{batch_size} 条），或没有测试集{advice}")
    if not any(entry["output"].strip() for entry in data):
        raise ValueError(f"{path} 里每一条的 output 都是空的，没有回答可学{advice}")
    for number, entry in enumerate(data, start=1):
        prompt_length = len(tokenizer.encode(format_input(entry) + "\n\n### Response:\n"))
        if prompt_length > context_length:
            raise ValueError(f"{path} 的第 {number} 条，提示词就有 {prompt_length} 个词元，回答全被截掉{advice}")


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


# region 沿用 ch05/main: text_to_token_ids, token_ids_to_text, calc_loss_batch, calc_loss_loader, evaluate_model, generate_and_print_sample, train_model_simple, plot_losses
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


def evaluate_model(model, train_loader, val_loader, device, eval_iter):
    """在训练集和验证集上各看几批，估计损失。（详解见 ch05/main/example_02_training_loop.py）"""
    model.eval()
    with torch.no_grad():
        train_loss = calc_loss_loader(train_loader, model, device, num_batches=eval_iter)
        val_loss = calc_loss_loader(val_loader, model, device, num_batches=eval_iter)
    model.train()
    return train_loss, val_loss


def generate_and_print_sample(model, tokenizer, device, start_context):
    """让模型接着提示词写 50 个词元，印成一行：看数字不如看它说的话。（详解见 ch05/main/example_02_training_loop.py）"""
    model.eval()
    context_size = model.pos_emb.weight.shape[0]
    encoded = text_to_token_ids(start_context, tokenizer).to(device)
    token_ids = generate_text_simple(model, encoded, max_new_tokens=50, context_size=context_size)
    print("    " + token_ids_to_text(token_ids, tokenizer).replace("\n", " "))
    model.train()


def train_model_simple(
    model, train_loader, val_loader, optimizer, device, num_epochs, eval_freq, eval_iter, start_context, tokenizer
):
    """训练循环：一批批地看数据，每批算损失、求梯度、更新权重。（详解见 ch05/main/example_02_training_loop.py）"""
    train_losses, val_losses, track_tokens_seen = [], [], []
    tokens_seen, global_step = 0, -1
    for epoch in range(num_epochs):
        model.train()
        for input_batch, target_batch in train_loader:
            optimizer.zero_grad()
            loss = calc_loss_batch(input_batch, target_batch, model, device)
            if not loss.isfinite():
                raise ValueError(f"第 {global_step + 1} 步的损失是 {loss.item()}，训练停下：学习率多半太大了，改小再来")
            loss.backward()
            optimizer.step()
            tokens_seen += input_batch.numel()
            global_step += 1
            if global_step % eval_freq == 0:
                train_loss, val_loss = evaluate_model(model, train_loader, val_loader, device, eval_iter)
                train_losses.append(train_loss)
                val_losses.append(val_loss)
                track_tokens_seen.append(tokens_seen)
                print(f"第 {epoch + 1:2} 轮　第 {global_step:3} 步　训练损失 {train_loss:.3f}　验证损失 {val_loss:.3f}")
        generate_and_print_sample(model, tokenizer, device, start_context)
    return train_losses, val_losses, track_tokens_seen


def plot_losses(epochs_seen, tokens_seen, train_losses, val_losses):
    """画训练损失和验证损失，下方横轴是轮数，上方横轴是看过的词元数。（详解见 ch05/main/example_02_training_loop.py）"""
    figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
    axis.plot(epochs_seen, train_losses, label="训练损失")
    axis.plot(epochs_seen, val_losses, linestyle="-.", label="验证损失")
    axis.set_xlabel("轮（epoch）")
    axis.set_ylabel("损失")
    axis.legend()
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    top = axis.twiny()
    top.plot(tokens_seen, train_losses, alpha=0)
    top.set_xlabel("看过的词元数")
    return figure


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

# %% 7.6　① 数据和模型：与 7.2–7.5 节相同
path = find_data("instruction-data.json", "instructions.json")
ckpt = torch.load(find_data("gpt_mini.pth"), map_location="cpu", weights_only=True)
config = ckpt["config"] | {"drop_rate": 0.0}  # 与书上相同，微调时不用 dropout
tokenizer = tiktoken.get_encoding("gpt2")
# 先查再练：凑不出一批，损失会是 nan；提示词占满了上下文，回答一个词元也不剩，损失却照样在降。两样都白练。
data = download_and_load_file(path, URL)
check_trainable(data, tokenizer, config["context_length"], BATCH_SIZE, path)
train_portion, test_portion = int(len(data) * 0.85), int(len(data) * 0.1)
train_data = data[:train_portion]
val_data = data[train_portion + test_portion :]

model = GPTModel(config)
model.load_state_dict(ckpt["model"])
model.to(DEVICE)

collate = partial(custom_collate_fn, device=DEVICE, allowed_max_length=config["context_length"])
train_set, val_set = InstructionDataset(train_data, tokenizer), InstructionDataset(val_data, tokenizer)
train_loader = DataLoader(train_set, BATCH_SIZE, shuffle=True, drop_last=True, collate_fn=collate)
val_loader = DataLoader(val_set, BATCH_SIZE, shuffle=False, collate_fn=collate)
print(f"【7.6】{path}　训练 {len(train_data)} 条，验证 {len(val_data)} 条")

# %% ② 微调之前的损失
# 损失是"平均每个要预测的词元，模型有多意外"；-100 的位置不算。在词表里瞎猜是 ln 50257 = 10.82。
# 书上的 355M 读过无数文章，看到指令也只有 3.8；mini 只背过一篇小说，没见过这样的话，与瞎猜差得不多。
# 训练集是打乱的，走到哪五批由种子定，所以先设一次。
torch.manual_seed(123)
with torch.no_grad():
    train_loss = calc_loss_loader(train_loader, model, DEVICE, num_batches=5)
    val_loss = calc_loss_loader(val_loader, model, DEVICE, num_batches=5)
print(f"\n微调之前　训练损失 {train_loss:.3f}　验证损失 {val_loss:.3f}　瞎猜 {math.log(config['vocab_size']):.2f}")


# %% ③ 一条样本里，每一段的损失各是多少
# 一条样本有四段：每条都一样的开场白，指令（和 input），标题 "### Response:"，回答和结束词元。分开平均，看看功课在哪里。
def losses_by_part(entry):
    """一条样本四段各自的平均损失。

    参数:
        entry (dict): 有 instruction、input、output

    返回:
        list[float]: 开场白、指令、标题、回答
    """
    opening = format_input(entry).split("\n\n")[0]
    with_title = format_input(entry) + "\n\n### Response:\n"
    ends = [len(tokenizer.encode(text)) for text in (opening, format_input(entry), with_title)]
    inputs, targets = collate([InstructionDataset([entry], tokenizer)[0]])
    with torch.no_grad():
        logits = model(inputs)  # (b, t, V)
    # 先拍平成 (b·t, V) 和 (b·t,)：cross_entropy 只认"一行一道题"。
    # reduction="none"：先不求平均，每个位置各给一个损失。目标错开了一位，所以第 i 个损失是第 i + 1 个词元的。
    losses = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    edges = [0, *(end - 1 for end in ends), len(losses)]  # 所以每段的终点也往前挪一个
    return [losses[start:end].mean().item() for start, end in zip(edges, edges[1:])]


PARTS = ["开场白", "指令", "标题", "回答"]
model.eval()
before = torch.tensor([losses_by_part(entry) for entry in val_data]).mean(dim=0).tolist()
print("微调之前　" + "　".join(f"{part} {loss:.2f}" for part, loss in zip(PARTS, before)))

# %% ④ 微调：就是第 5 章的 train_model_simple，一个字也没有改
# 数据换成了指令和回答，目标里有 -100，别的都不变：每批算损失、求梯度、更新。每轮结束，让它接着验证集第一条写 50 个词元。
print()
start_time = time.time()
torch.manual_seed(123)
optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1)
train_losses, val_losses, tokens_seen = train_model_simple(
    model,
    train_loader,
    val_loader,
    optimizer,
    DEVICE,
    num_epochs=NUM_EPOCHS,
    eval_freq=EVAL_FREQ,
    eval_iter=EVAL_ITER,
    start_context=format_input(val_data[0]),
    tokenizer=tokenizer,
)
print(f"微调用了 {time.time() - start_time:.0f} 秒")

# %% ⑤ 存下来
# 书上到 7.7 节才存；先存，后面两节的讲解脚本就可以直接用它。
# 格式与第 5 章相同：配置和状态字典。优化器的动量不存：用来回答，不接着训练。
OUTPUTS.mkdir(exist_ok=True)
saved = OUTPUTS / "example-sft.pth"
part = saved.with_suffix(".part")
try:
    torch.save({"config": config, "model": model.state_dict()}, part)
    os.replace(part, saved)  # 写完再改名：写到一半断电，旧的还在
except (OSError, RuntimeError):  # 磁盘满了，torch.save 报的是 RuntimeError
    part.unlink(missing_ok=True)
    print(f"存不下 {saved}：磁盘满了，或没有写的权限", file=sys.stderr)
    sys.exit(2)
print(f"模型　{saved}")

# %% ⑥ 损失曲线，和每一段的损失
# 书上是 torch.linspace(0, NUM_EPOCHS, len(train_losses))：均匀地分，只是近似。
# 第 i 次评估在第 i × EVAL_FREQ 步，除以一轮的步数，就是第几轮。
epochs_seen = torch.arange(len(train_losses)) * EVAL_FREQ / len(train_loader)  # (n,)
figure = plot_losses(epochs_seen, tokens_seen, train_losses, val_losses)
figure.savefig(OUTPUTS / "example-loss.png", dpi=150)

model.eval()
after = torch.tensor([losses_by_part(entry) for entry in val_data]).mean(dim=0).tolist()
figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
for shift, losses, label in [(-0.2, before, "微调之前"), (0.2, after, "微调之后")]:
    bars = axis.bar([place + shift for place in range(len(PARTS))], losses, width=0.4, label=label)
    axis.bar_label(bars, fmt="%.2f")
axis.set_xticks(range(len(PARTS)), PARTS)
axis.set_ylabel("验证集上的平均损失")
figure.legend(loc="outside upper center", ncols=2)
figure.savefig(OUTPUTS / "example-parts.png", dpi=150)
print("\n微调之后　" + "　".join(f"{part} {loss:.2f}" for part, loss in zip(PARTS, after)))
print(f"图　{OUTPUTS / 'example-loss.png'}、example-parts.png")
# 开场白和标题每条都一样，背下来就行，损失先降到接近 0；回答里有真正要会的东西，降得最慢。
# 平均损失看着很低，多半是前面几段拉下来的：损失低，不等于答得对。答对几条，7.8 节来数；只算回答的损失会怎样，见练习 7.2。

# %% 这个数字对吗？
print("\n这个数字对吗？")
hint = "学习率太大，或目标没有错开一位"
confirm(f"验证损失从 {val_loss:.2f} 降到 {val_losses[-1]:.2f}", val_losses[-1] < val_loss, hint)
claim = f"每条都一样的开场白，学得比回答好（{after[0]:.2f} 对 {after[3]:.2f}）"
confirm(claim, after[0] < after[3], "四段的边界切错了")
# cross_entropy 默认跳过 -100；自己先挑出要算的位置，应得到同一个数。
inputs, targets = next(iter(val_loader))
with torch.no_grad():
    kept = targets != -100  # (b, t)
    by_hand = nn.functional.cross_entropy(model(inputs)[kept], targets[kept]).item()
    loss = calc_loss_batch(inputs, targets, model, DEVICE).item()
confirm("一批的损失，正是目标不为 -100 的那些位置的平均", abs(loss - by_hand) < 1e-4, "-100 的位置也算进去了")

# %% 动手改
# 1. 把 NUM_EPOCHS 改成 3：验证损失还降不降？四段里哪一段还在降？
# 2. 把 LEARNING_RATE 改成书上的 5e-5：一轮之后，开场白学会了没有？
# 3. 把 custom_collate_fn 区里的 if indices.numel() > 1 改成 if False：训练损失更低了，为什么不是好事？
