"""第 7 章 · 练习 7.2　只学回答，不学提示词

题目：　书里连提示词也算损失。把提示词（instruction 和 input）对应的目标换成 -100，只算回答的损失，会答得更好吗？
先想：　提问是人写的，模型用不着会写。可是多学一点英文，总没有坏处？哪个更有道理？
解法：　数据集多记一个提示词的长度，凑批时把目标的前面一段换成 -100；先看三条样本，再遮与不遮各微调一次，并排比。
　　　　遮住之后，大半位置的 logits 反正不用，不算它们，结果不变，每步却快得多；省下的时间再多练几轮。
陷阱：　① 目标错开了一位，要遮的是长度 − 1 个；② 不要靠找 "### Response:" 来定位：指令里也可能写着它。
动手改：把 instruction_length - 1 的 - 1 去掉，三条样本解码出来的开头少了什么？

运行：
    python ch07/experiments/exercise_7_2_mask_instruction.py
    python ch07/experiments/exercise_7_2_mask_instruction.py --quick     # 只用几十条，看看流程
    约 4 分钟，1.1 GB（2 核 CPU）

形状记号：b 批大小　t 序列长度（词元数）　d 嵌入维度　h 头数　k 每个头的维度　V 词表大小　n 个数　m 回答的词元数
"""

import argparse
import json
import os
import sys
import time
import urllib.request
from functools import partial
from itertools import islice
from pathlib import Path

import tiktoken
import torch
import torch.nn as nn
from torch.utils.data import DataLoader, Dataset

# 改这里：与 example_04_finetune.py 相同。书上是 "gpt2-355M.pth"、"instruction-data.json"、5e-5、2 轮、批大小 8
WEIGHTS, DATA = "gpt_mini.pth", "instructions.json"
LEARNING_RATE, NUM_EPOCHS, BATCH_SIZE = 1e-3, 1, 4
EVAL_FREQ, EVAL_ITER = 50, 5
MORE_EPOCHS = 3  # 遮住提示词的那一次，再多练几轮

# 书上演示用的三条。
SAMPLE_DATA = [
    {
        "instruction": "What is an antonym of 'complicated'?",
        "input": "",
        "output": "An antonym of 'complicated' is 'simple'.",
    },
    {
        "instruction": "Sort the following list in alphabetical order.",
        "input": "Zebra, Elephant, Crocodile",
        "output": "Crocodile, Elephant, Zebra",
    },
    {
        "instruction": "Arrange the given numbers in descending order.",
        "input": "5, 12, 8, 3, 15",
        "output": "15, 12, 8, 5, 3.",
    },
]


# region 沿用 ch07/main: download_and_load_file, format_input
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


# endregion


# region 改写 ch07/main: InstructionDataset
class InstructionDataset(Dataset):
    """指令数据集，另外记下每条的提示词有多长。（原版详解见 ch07/main/example_02_collate.py）"""

    def __init__(self, data, tokenizer):
        self.data = data
        self.instruction_lengths = []  # 改：提示词有几个词元，凑批时要知道遮到哪里
        self.encoded_texts = []
        for entry in data:
            instruction_plus_input = format_input(entry)
            response_text = f"\n\n### Response:\n{entry['output']}"
            full_text = instruction_plus_input + response_text
            self.encoded_texts.append(tokenizer.encode(full_text))
            # 改：量长度，而不是到编号里去找标题：指令里若写着 "### Response:"，找到的是假的
            self.instruction_lengths.append(len(tokenizer.encode(instruction_plus_input)))

    def __getitem__(self, index):
        return self.instruction_lengths[index], self.encoded_texts[index]  # 改：两样一起交出去

    def __len__(self):
        return len(self.data)


# endregion


# region 改写 ch07/main: custom_collate_fn
def custom_collate_fn(batch, pad_token_id=50256, ignore_index=-100, allowed_max_length=None, device="cpu", mask_instruction=True):  # 改：多一个开关
    """把长短不一的几条凑成一批；提示词的目标可以换成 -100。（原版详解见 ch07/main/example_02_collate.py）"""
    batch_max_length = max(len(item) + 1 for _, item in batch)  # 改：每条是（提示词的长度，词元编号）
    inputs_lst, targets_lst = [], []
    for instruction_length, item in batch:  # 改：拆开两样
        new_item = item.copy()
        new_item += [pad_token_id]
        padded = new_item + [pad_token_id] * (batch_max_length - len(new_item))
        inputs = torch.tensor(padded[:-1])  # (t,)
        targets = torch.tensor(padded[1:])  # (t,)
        mask = targets == pad_token_id
        indices = torch.nonzero(mask).squeeze()  # (n,) 或 ()
        if indices.numel() > 1:
            targets[indices[1:]] = ignore_index
        if mask_instruction:  # 改：不遮时，与书里正文的做法完全相同
            # 改：目标比输入早一位，第 0 个目标是提示词的第 1 个词元，所以属于提示词的目标只有 instruction_length − 1 个。
            targets[: instruction_length - 1] = ignore_index  # 改：少遮一个会学到提示词的结尾，多遮一个会丢掉标题的开头
        if allowed_max_length is not None:
            inputs = inputs[:allowed_max_length]
            targets = targets[:allowed_max_length]
        inputs_lst.append(inputs)
        targets_lst.append(targets)
    return torch.stack(inputs_lst).to(device), torch.stack(targets_lst).to(device)  # (b, t)，(b, t)


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


# region 沿用 ch05/main: text_to_token_ids, token_ids_to_text, calc_loss_loader, evaluate_model, generate_and_print_sample, train_model_simple
def text_to_token_ids(text, tokenizer):
    """文本 → 模型的输入，(1, t) 的词元编号。（详解见 ch05/main/example_01_loss.py）"""
    encoded = tokenizer.encode(text, allowed_special={"<|endoftext|>"})
    return torch.tensor(encoded).unsqueeze(0)  # (1, t)


def token_ids_to_text(token_ids, tokenizer):
    """模型的输出 → 文本。（详解见 ch05/main/example_01_loss.py）"""
    return tokenizer.decode(token_ids.squeeze(0).tolist())


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


# endregion


# region 改写 ch05/main: calc_loss_batch
def calc_loss_batch(input_batch, target_batch, model, device):
    """一批的损失；目标是 -100 的位置，连 logits 也不算。（原版详解见 ch05/main/example_01_loss.py）"""
    input_batch, target_batch = input_batch.to(device), target_batch.to(device)
    keep = target_batch != -100  # (b, t)　改：哪些位置算损失
    # 改：把 GPTModel.forward 拆开写。注意力要看全部位置；输出层却是逐个位置算的，不算损失的位置在它前面就可以扔掉。
    # 改：输出层有 50257 路，mini 的计算大半在它身上，所以扔掉得越多越快；损失和梯度一点不变。
    positions = torch.arange(input_batch.shape[1], device=device)  # (t,)　改：同上
    x = model.drop_emb(model.tok_emb(input_batch) + model.pos_emb(positions))  # (b, t, d)　改：同上
    x = model.final_norm(model.trf_blocks(x))  # (b, t, d)　改：同上
    logits = model.out_head(x[keep])  # (n, V)　改：只算留下的 n 个
    return nn.functional.cross_entropy(logits, target_batch[keep])  # (n, V)，(n,)　改：两边都只剩 n 个


# endregion


# region 沿用 ch07/experiments/exercise_7_1_phi3_prompt.py: load_model, load_split, finetune, evaluate_answers
def load_model(device):
    """读入预训练过的模型；每次微调都从这同一份权重开始。（详解见 ch07/experiments/exercise_7_1_phi3_prompt.py）"""
    path = find_data(WEIGHTS)
    try:
        ckpt = torch.load(path, map_location="cpu", weights_only=True)
        model = GPTModel(ckpt["config"] | {"drop_rate": 0.0})
        model.load_state_dict(ckpt["model"])
    except Exception:
        raise ValueError(f"{path} 读不出来：要第 5 章存的 .pth，重新存一次") from None
    if bad := [name for name, tensor in ckpt["model"].items() if not tensor.isfinite().all()]:
        raise ValueError(f"{path} 里的 {bad[0]} 有 nan 或 inf，一个就会传染给所有的数，请重新存一次")
    return model.to(device)


def load_split(path, quick):
    """读数据，切成训练、验证、测试三份。（详解见 ch07/experiments/exercise_7_1_phi3_prompt.py）"""
    data = download_and_load_file(path, "")
    train_portion, test_portion = int(len(data) * 0.85), int(len(data) * 0.1)
    train_data, test_data = data[:train_portion], data[train_portion : train_portion + test_portion]
    val_data = data[train_portion + test_portion :]
    if quick:
        train_data, val_data, test_data = train_data[:40], val_data[:8], test_data[:8]
    print(f"数据　{path}　训练 {len(train_data)} 条，没见过的题 {len(test_data + val_data)} 条")
    return train_data, val_data, test_data + val_data


def finetune(model, optimizer, train_set, val_set, collate, num_epochs, start_context, tokenizer, device):
    """用书上的训练循环微调；每个练习只改其中一样，结果的差别就只来自它。（详解见 ch07/experiments/exercise_7_1_phi3_prompt.py）"""
    collate = partial(collate, device=device, allowed_max_length=model.pos_emb.weight.shape[0])
    torch.manual_seed(123)
    train_loader = DataLoader(train_set, BATCH_SIZE, shuffle=True, drop_last=True, collate_fn=collate)
    val_loader = DataLoader(val_set, BATCH_SIZE, shuffle=False, collate_fn=collate)
    began = time.time()
    train_model_simple(model, train_loader, val_loader, optimizer, device, num_epochs, EVAL_FREQ, EVAL_ITER, start_context, tokenizer)
    return time.time() - began


def evaluate_answers(model, data, tokenizer, device, format_function=format_input, title="\n\n### Response:\n"):
    """没见过的题答得怎样：回答那一段的平均损失，和一字不差的条数。（详解见 ch07/experiments/exercise_7_1_phi3_prompt.py）"""
    model.eval()
    loss, exact = 0.0, 0
    for entry in data:
        prompt = tokenizer.encode(format_function(entry) + title)
        answer = tokenizer.encode(entry["output"]) + [50256]
        idx = torch.tensor([prompt + answer], device=device)  # (1, t)
        with torch.no_grad():
            logits = model(idx[:, :-1])[0, len(prompt) - 1 :]  # (m, V)
        targets = idx[0, len(prompt) :]  # (m,)
        loss += nn.functional.cross_entropy(logits, targets).item()
        exact += (logits.argmax(dim=-1) == targets).all().item()
    return loss / len(data), exact


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


def show_samples(tokenizer):
    """看三条样本遮住之后剩下什么，再看一条会让"找标题"上当的。

    参数:
        tokenizer (tiktoken.Encoding): 分词器

    返回:
        tuple[list[int], list[str], list[str]]: 输入的形状；每条算损失的文字；上当的那一条，按长度遮、按标题遮，各剩下什么
    """
    inputs, targets = custom_collate_fn([*InstructionDataset(SAMPLE_DATA, tokenizer)])
    print(f"书上的三条样本　输入 {list(inputs.shape)}，目标 {list(targets.shape)}　(b, t)")
    rests = [tokenizer.decode(target[target != -100].tolist()) for target in targets]
    for number, (row, rest) in enumerate(zip(targets, rests), start=1):
        print(f"　第 {number} 条　{len(row)} 个位置，算损失的 {int((row != -100).sum())} 个：{rest!r}")

    # 陷阱：指令里写着标题。按编号去找第一个 "### Response:"，就会从指令的半中间开始学。
    tricky = {"instruction": "Repeat:\n\n### Response:\nhello", "input": "", "output": "hello"}
    _, targets = custom_collate_fn([*InstructionDataset([tricky], tokenizer)])
    by_length = tokenizer.decode(targets[0][targets[0] != -100].tolist())
    text = format_input(tricky) + f"\n\n### Response:\n{tricky['output']}<|endoftext|>"
    by_title = text[text.index("\n\n### Response:") :]
    print(f"指令里也有标题　按长度遮，剩下 {by_length!r}\n　　　　　　　　找标题来遮，剩下 {by_title!r}\n")
    return list(inputs.shape), rests, [by_length, by_title]


def same_loss(model, train_data, tokenizer, device):
    """不算多余的 logits，损失差多少？拿一批遮过的，与全部算出来、再交给 cross_entropy 的比。

    参数:
        model (nn.Module): 模型
        train_data (list[dict]): 训练集
        tokenizer (tiktoken.Encoding): 分词器
        device (torch.device): 在哪里算

    返回:
        tuple[float, float]: 两种算法的损失
    """
    inputs, targets = custom_collate_fn([*InstructionDataset(train_data[:4], tokenizer)], device=device)
    with torch.no_grad():
        short = calc_loss_batch(inputs, targets, model, device).item()
        logits = model(inputs)  # (b, t, V)
    return short, nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).item()


def compare(args):
    """遮与不遮各微调一次；遮住的那一次，再多练几轮。

    参数:
        args (argparse.Namespace): 命令行参数，见 main
    """
    device, tokenizer = pick_device(args.device), tiktoken.get_encoding("gpt2")
    shape, rests, (by_length, by_title) = show_samples(tokenizer)
    train_data, val_data, held_out = load_split(find_data(DATA), args.quick)
    short, full = same_loss(load_model(device), train_data, tokenizer, device)
    train_set, val_set = InstructionDataset(train_data, tokenizer), InstructionDataset(val_data, tokenizer)
    rows, steps, start_context = [], len(train_data) // BATCH_SIZE, format_input(val_data[0])
    for title, mask in [("提示词也算损失", False), ("遮住提示词", True)]:
        print(f"\n—— {title} ——")
        model = load_model(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1)
        seconds, collate = 0, partial(custom_collate_fn, mask_instruction=mask)
        for epochs in [NUM_EPOCHS, MORE_EPOCHS][: 1 + mask]:  # 同一个模型、同一个优化器接着练，就像没有停过
            seconds += finetune(model, optimizer, train_set, val_set, collate, epochs, start_context, tokenizer, device)
            rows.append((title, epochs, seconds, *evaluate_answers(model, held_out, tokenizer, device)))

    print("\n　轮数　总共几秒　每步毫秒（含评估）　回答的损失　一字不差")
    total = 0
    for title, epochs, seconds, loss, exact in rows:
        total = epochs + (total if epochs == MORE_EPOCHS else 0)
        print(f"{total:6}{seconds:10.0f}{1000 * seconds / total / steps:12.0f}{loss:18.3f}{exact:8} / {len(held_out)}　{title}")
    # 书上（355M，2 轮）：遮住之后，损失从 2.281 / 2.263 降到 0.143 / 0.727，但裁判打的分 47.73，比不遮的 49.45 略低。
    # mini 上量过：不遮也练 4 轮（gpt_instruction_finetuning.py 的默认），回答的损失 0.418，答对 76 / 166，与遮住的 4 轮一样好，
    # 只是慢得多。换一套设置（学习率 1.5e-3、先升后降，批大小 8，练 8 轮），差别才大：不遮 54%，遮住 77%，连标题也遮 80%。

    print("\n这个数字对吗？")
    confirm("三条样本是 [3, 64]，与书上相同", shape == [3, 64], "格式与原书差了几个字符，换行也算")
    wanted = "\n\n### Response:\nCrocodile, Elephant, Zebra<|endoftext|>"
    confirm("第 2 条没遮住的是标题、回答和一个结束词元，与书上相同", rests[1] == wanted, "instruction_length 没有减 1")
    confirm("指令里有标题时，按长度遮也不会错，找标题就会错", by_length != by_title and by_length in by_title, "提示词的长度量错了")
    confirm(f"不算多余的 logits，损失不变（差 {abs(short - full):.0e}）", abs(short - full) < 1e-4, "keep 与目标没有对齐")


def main():
    """练习 7.2 的命令行。"""
    parser = argparse.ArgumentParser(description="练习 7.2　提示词不算损失，只学回答")
    parser.add_argument("--device", default="auto", help="auto、mps、cuda 或 cpu（默认：auto）")
    parser.add_argument("--quick", action="store_true", help="只用几十条，看看流程；这时的分数没有意义")
    args = parser.parse_args()
    try:
        compare(args)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:  # 磁盘满了，没有权限
        parser.error(f"读写不了 {error.filename or '输出'}：{error.strerror}")


if __name__ == "__main__":
    main()
