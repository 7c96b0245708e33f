"""第 7 章 · 7.2–7.7 节　指令微调：教只会接话的 GPT 照着指令回答

读完、敲完这个脚本，你应该能不看书回答：
    1. 训练目标没有变，还是预测下一个词元；那它是怎样学会听指令的？
    2. 长短不一的样本凑成一批，目标里为什么第一个 50256 留着，后面的都换成 -100？
    3. 怎样从生成的文本里截出回答？

运行：
    python ch07/main/gpt_instruction_finetuning.py                                        # 微调 mini，回答测试集
    python ch07/main/gpt_instruction_finetuning.py --ask "Adjective: hot. What is the opposite of hot?"   # 问一句
    python ch07/main/gpt_instruction_finetuning.py --size 355M                            # 书上的那次微调，见 README
    python setup/check_data.py 我的指令.json       # 换成自己的数据（--data）之前，先查一遍；聊天记录、JSONL 它能转换
    mini 约 4 分钟，1.2 GB（2 核 CPU）；--quick 约 12 秒

形状记号：b 批大小　t 序列长度（词元数）　d 嵌入维度　h 头数　k 每个头的维度（k = d / h）　V 词表大小　n 个数
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

import matplotlib.pyplot as plt
import tiktoken
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from matplotlib.ticker import MaxNLocator
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

# 改这里
# GPT-2 已经懂英文，只要轻轻改一改说话的方式：步子小，两轮就够，再多就开始背题（书上的设置）。
# mini 只读过一篇小说，是在微调时从头学这批题：步子要大，轮数要多。
GPT2 = {"learning_rate": 5e-5, "num_epochs": 2, "batch_size": 8, "eval_freq": 5, "max_new_tokens": 256}
SETTINGS = {
    "mini": {"learning_rate": 1e-3, "num_epochs": 4, "batch_size": 4, "eval_freq": 50, "max_new_tokens": 64},
    "124M": GPT2,
    "355M": GPT2,
}
WEIGHTS = {"mini": "gpt_mini.pth", "124M": "gpt2-124M.pth", "355M": "gpt2-355M.pth"}  # 都是第 5 章写出来的
NAMES = {"mini": "gpt-mini", "124M": "gpt2-small124M", "355M": "gpt2-medium355M"}  # 写出的文件叫什么，与书上相同
EVAL_ITER = 5  # 评估时训练集、验证集各看 5 批
OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
URL = "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/ch07/01_main-chapter-code/instruction-data.json"


# region 沿用（含注释） ch07/main: download_and_load_file, format_input, InstructionDataset, custom_collate_fn, check_trainable, generate_response
def download_and_load_file(file_path, url):
    """读指令数据；file_path 不存在，就先从 url 下载。

    参数:
        file_path (str 或 Path): JSON 文件
        url (str): 从哪里下载

    返回:
        list[dict]: 每条一个字典，有 instruction、input、output 三段文字

    异常:
        ValueError: 文件里不是这样的数据
        OSError: 下载不了，或读写不了

    出处: 原书 7.2 节
    """
    if not os.path.exists(file_path):
        with urllib.request.urlopen(url, timeout=30) as response:
            text_data = response.read().decode("utf-8")
        with open(file_path, "w", encoding="utf-8") as file:
            file.write(text_data)

    advice = f"；全部问题和转换的办法：python setup/check_data.py {file_path}"
    try:
        with open(file_path, encoding="utf-8-sig") as file:  # -sig：去掉 Windows 记事本加在开头的 BOM
            data = json.load(file)
    except (ValueError, RecursionError) as error:
        place = f"（第 {error.lineno} 行第 {error.colno} 个字符）" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f"{file_path} 不是 UTF-8 编码的 JSON{place}{advice}") from None
    # 原书读进来就用；这里先查一遍，免得训练到一半，才发现有一条写错了。
    if not isinstance(data, list) or not data:
        raise ValueError(f"{file_path} 里应是一个列表，至少一条{advice}")
    for number, entry in enumerate(data, start=1):
        texts = [entry.get(key) for key in ("instruction", "input", "output")] if isinstance(entry, dict) else [None]
        # <|endoftext|> 表示"到此为止"，混在正文里，会把一条数据切成两条。
        if not all(isinstance(text, str) and "<|endoftext|>" not in text for text in texts) or not texts[0].strip():
            wanted = "instruction（不能是空的）、input、output 三段文字，不含 <|endoftext|>"
            raise ValueError(f"{file_path} 的第 {number} 条应有 {wanted}{advice}")
        # JSON 里写成 "\ud83d" 的是半个表情符号：读得进来，写不出去，训练完了存回答时才报错。
        whole = json.dumps(entry, ensure_ascii=False)
        if whole.encode("utf-8", "ignore").decode("utf-8") != whole:
            raise ValueError(f"{file_path} 的第 {number} 条有半个表情符号（孤立的代理项）{advice}")
    return data


# 模型只会接着写。哪里是指令、哪里该轮到自己，要用固定的记号隔开：### Instruction:、### Input:、### Response:。
# 记号本身没有魔力，用别的也行（练习 7.1 换成 Phi-3 的）；要紧的是训练和提问用同一种，差一个换行都可能答非所问。
def format_input(entry):
    """一条数据 → Alpaca 格式的提示词，到回答之前为止。

    参数:
        entry (dict): 有 instruction 和 input；input 是空的，就整段省略

    返回:
        str: 提示词

    出处: 原书 7.2 节；格式来自 Stanford Alpaca，2023
    """
    instruction_text = (
        f"Below is an instruction that describes a task. "
        f"Write a response that appropriately completes the request."
        f"\n\n### Instruction:\n{entry['instruction']}"
    )
    input_text = f"\n\n### Input:\n{entry['input']}" if entry["input"] else ""  # 省略时连标题也不留，免得教模型看空标题
    return instruction_text + input_text


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


def check_trainable(data, tokenizer, context_length, batch_size, path):
    """凑得出一批吗，有回答可学吗，每一条的回答都留得下吗；不行就说是第几条，不训练。

    参数:
        data (list[dict]): 指令数据
        tokenizer (tiktoken.Encoding): 分词器
        context_length (int): 模型最多看多少个词元，更长的截掉
        batch_size (int): 一批几条
        path (Path): 数据从哪个文件来，报错时要说

    异常:
        ValueError: 条数太少，回答全是空的，或有一条的提示词就占满了上下文
    """
    advice = f"；全部问题和转换的办法：python setup/check_data.py {path} --context {context_length}"
    if int(len(data) * 0.85) < batch_size or int(len(data) * 0.1) < 1:
        raise ValueError(f"{path} 只有 {len(data)} 条，切成三份，凑不出一批训练数据（{batch_size} 条），或没有测试集{advice}")
    if not any(entry["output"].strip() for entry in data):
        raise ValueError(f"{path} 里每一条的 output 都是空的，没有回答可学{advice}")
    for number, entry in enumerate(data, start=1):
        prompt_length = len(tokenizer.encode(format_input(entry) + "\n\n### Response:\n"))
        # 截断从尾巴截起，而回答就在尾巴上：提示词占满了，回答一个词元也不剩，学的只是提示词，损失照样在降。
        if prompt_length > context_length:
            raise ValueError(f"{path} 的第 {number} 条，提示词就有 {prompt_length} 个词元，回答全被截掉{advice}")


def generate_response(model, tokenizer, entry, device, max_new_tokens=256):
    """让模型回答一条指令，截出回答。

    参数:
        model (nn.Module): 微调过的语言模型；应先调用 model.eval()
        tokenizer (tiktoken.Encoding): 分词器
        entry (dict): 有 instruction 和 input
        device (torch.device): 在哪里算
        max_new_tokens (int): 最多写几个词元

    返回:
        str: 回答

    出处: 原书 7.7 节（那里写在循环里）
    """
    input_text = format_input(entry)
    token_ids = generate(
        model=model,
        idx=text_to_token_ids(input_text, tokenizer).to(device),
        max_new_tokens=max_new_tokens,
        context_size=model.pos_emb.weight.shape[0],
        eos_id=50256,  # 写出结束词元就停
    )
    generated_text = token_ids_to_text(token_ids, tokenizer)
    # 生成的文本 = 提示词 + "\n\n### Response:\n" + 回答。按字符数切，不去找标题：指令里也可能写着 "### Response:"。
    return generated_text[len(input_text) :].replace("### Response:", "").strip()


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


# region 沿用 ch05/main: text_to_token_ids, token_ids_to_text, generate, calc_loss_batch, calc_loss_loader, evaluate_model, generate_and_print_sample, train_model_simple, plot_losses
def text_to_token_ids(text, tokenizer):
    """文本 → 模型的输入，(1, t) 的词元编号。（详解见 ch05/main/example_01_loss.py）"""
    encoded = tokenizer.encode(text, allowed_special={"<|endoftext|>"})
    return torch.tensor(encoded).unsqueeze(0)  # (1, t)


def token_ids_to_text(token_ids, tokenizer):
    """模型的输出 → 文本。（详解见 ch05/main/example_01_loss.py）"""
    return tokenizer.decode(token_ids.squeeze(0).tolist())


def generate(model, idx, max_new_tokens, context_size, temperature=0.0, top_k=None, eos_id=None):
    """逐个生成词元，可以调温度、限制 top-k，遇到结束词元就停。（详解见 ch05/main/example_03_decoding.py）"""
    if not temperature >= 0:
        raise ValueError(f"温度不能是 {temperature}：0 表示贪心，越大越随意")
    if top_k is not None and not 1 <= top_k <= model.out_head.out_features:
        raise ValueError(f"top_k 应在 1 到 {model.out_head.out_features}（词表大小）之间，不能是 {top_k}")
    finished = torch.zeros(len(idx), 1, dtype=torch.bool, device=idx.device)  # (b, 1)
    for _ in range(max_new_tokens):
        idx_cond = idx[:, -context_size:]  # (b, t)
        with torch.no_grad():
            logits = model(idx_cond)  # (b, t, V)
        logits = logits[:, -1, :]  # (b, V)
        if top_k is not None:
            top_logits, _ = torch.topk(logits, top_k)  # (b, top_k)
            min_val = top_logits[:, -1:]  # (b, 1)
            logits = torch.where(logits < min_val, -torch.inf, logits)  # (b, V)
        if temperature > 0.0:
            logits = logits / temperature
            logits = logits - logits.max(dim=-1, keepdim=True).values  # (b, V)
            probs = torch.softmax(logits, dim=-1)  # (b, V)
            idx_next = torch.multinomial(probs, num_samples=1)  # (b, 1)
        else:
            idx_next = torch.argmax(logits, dim=-1, keepdim=True)  # (b, 1)
        if eos_id is not None:
            idx_next = torch.where(finished, eos_id, idx_next)  # (b, 1)
            finished = idx_next == eos_id  # (b, 1)
            if finished.all():
                break
        idx = torch.cat((idx, idx_next), dim=1)  # (b, t + 1)
    return idx


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


def load_model(path):
    """读回存下的模型：照配置建出一样的结构，填进同样的权重。

    参数:
        path (Path): 第 5 章存的权重，或微调过的

    返回:
        tuple[GPTModel, dict]: 模型和它的配置

    异常:
        ValueError: 文件坏了，或是别的文件
    """
    try:
        ckpt = torch.load(path, map_location="cpu", weights_only=True)  # weights_only：只读数，不执行文件里夹带的代码
        config = ckpt["config"] | {"drop_rate": 0.0}  # 与书上相同，微调时不用 dropout
        model = GPTModel(config)
        model.load_state_dict(ckpt["model"])
    except Exception:  # 坏文件、别的文件，能引出各种异常
        raise ValueError(f"{path} 读不出来：要第 5 章或这个脚本存的 .pth，重新存一次") from None
    if bad := [name for name, tensor in ckpt["model"].items() if not tensor.isfinite().all()]:
        raise ValueError(f"{path} 里的 {bad[0]} 有 nan 或 inf，一个就会传染给所有的数，请重新存一次")
    return model, config


def save_model(weights, path):
    """存权重。先写临时文件再改名：写到一半断电，旧的还在。

    参数:
        weights (dict): 配置和状态字典
        path (Path): 存到哪里；文件夹没有就新建

    异常:
        ValueError: 写不下
    """
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(".part")
    try:
        torch.save(weights, part)
        os.replace(part, path)
    except (OSError, RuntimeError):  # 磁盘满了，torch.save 报的是 RuntimeError
        raise ValueError(f"存不下 {path}：磁盘满了，或没有写的权限") from None
    finally:
        part.unlink(missing_ok=True)


def finetune(args):
    """微调，存下模型，再回答测试集的每一题。

    参数:
        args (argparse.Namespace): 命令行参数，见 main

    异常:
        ValueError: 轮数不到 1，没有这个数据文件，或条数太少
    """
    device, settings = pick_device(args.device), SETTINGS[args.size]
    batch_size = settings["batch_size"]
    num_epochs, eval_freq = (1, 5) if args.quick else (settings["num_epochs"], settings["eval_freq"])
    name = "gpt-quick" if args.quick else NAMES[args.size]  # --quick 写的文件另有名字，不会盖掉好的
    if num_epochs < 1:
        raise ValueError(f"SETTINGS 里的 num_epochs 至少是 1，不能是 {num_epochs}")

    # 7.2　数据
    path = args.data or find_data("instruction-data.json", "instructions.json")
    if not path.is_file():
        raise ValueError(f"找不到文件 {path}")
    data = download_and_load_file(path, URL)
    train_portion, test_portion = int(len(data) * 0.85), int(len(data) * 0.1)
    train_data = data[:train_portion]
    test_data = data[train_portion : train_portion + test_portion]
    val_data = data[train_portion + test_portion :]
    print(f"数据　{path}　训练 {len(train_data)} 条，验证 {len(val_data)} 条，测试 {len(test_data)} 条")
    if args.quick:
        train_data, val_data, test_data = train_data[: max(64, batch_size)], val_data[:8], test_data[:3]

    # 7.5　预训练过的模型
    model, config = load_model(find_data(WEIGHTS[args.size]))
    model.to(device)
    print(f"权重　{WEIGHTS[args.size]}（{config['n_layers']} 层，{config['emb_dim']} 维），在 {device} 上训练")

    # 7.4　数据加载器
    tokenizer = tiktoken.get_encoding("gpt2")
    check_trainable(data, tokenizer, config["context_length"], batch_size, path)
    collate = partial(custom_collate_fn, device=device, allowed_max_length=config["context_length"])
    torch.manual_seed(123)
    train_set, val_set = InstructionDataset(train_data, tokenizer), InstructionDataset(val_data, tokenizer)
    train_loader = DataLoader(train_set, batch_size, shuffle=True, drop_last=True, collate_fn=collate)
    val_loader = DataLoader(val_set, batch_size, shuffle=False, collate_fn=collate)

    # 7.6　微调
    torch.manual_seed(123)
    initial = evaluate_model(model, train_loader, val_loader, device, EVAL_ITER)
    print(f"微调前　训练损失 {initial[0]:.3f}　验证损失 {initial[1]:.3f}\n")
    start_time = time.time()
    torch.manual_seed(123)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings["learning_rate"], weight_decay=0.1)
    train_losses, val_losses, tokens_seen = train_model_simple(
        model, train_loader, val_loader, optimizer, device, num_epochs, eval_freq, EVAL_ITER,
        start_context=format_input(val_data[0]), tokenizer=tokenizer,
    )  # fmt: skip
    print(f"\n微调用了 {(time.time() - start_time) / 60:.1f} 分钟")
    save_model({"config": config, "model": model.state_dict()}, OUTPUTS / f"{name}-sft.pth")
    epochs_seen = torch.arange(len(train_losses)) * eval_freq / len(train_loader)  # (n,)　书上是 linspace：均匀地分，只是近似
    figure = plot_losses(epochs_seen, tokens_seen, train_losses, val_losses)
    figure.savefig(OUTPUTS / f"loss-plot-{name}.png", dpi=150)

    # 7.7　回答测试集
    responses = OUTPUTS / f"instruction-data-with-response-{name}.json"
    answer(model, tokenizer, test_data, device, settings["max_new_tokens"], responses)
    print(f"模型　{OUTPUTS / f'{name}-sft.pth'}\n回答　{responses}\n损失　{OUTPUTS / f'loss-plot-{name}.png'}")

    print("\n这个数字对吗？")
    fell = val_losses[-1] < initial[1]
    confirm(f"验证损失从 {initial[1]:.3f} 降到 {val_losses[-1]:.3f}", fell, "学习率太大，或目标没有错开一位")
    if path.name == "instruction-data.json" and args.size == "355M" and not args.quick:
        near = abs(initial[0] - 3.826) < 0.002 and abs(initial[1] - 3.762) < 0.002
        confirm("微调前的损失与书上相同：3.826 / 3.762", near, "-100 写错了；MPS 上用旧版 PyTorch 会得到 19.88")
        near = abs(train_losses[-1] - 0.299) < 0.03 and abs(val_losses[-1] - 0.657) < 0.03
        confirm("微调后约 0.299 / 0.657，与书上相差不到 0.03", near, "学习率改过，或批的次序不同")


def answer(model, tokenizer, test_data, device, max_new_tokens, path):
    """7.7 节：回答测试集的每一题，存成 JSON，印出前三条，数一数答对几条。

    参数:
        model, tokenizer: 微调过的模型；分词器
        test_data (list[dict]): 测试集；每条会多出 model_response
        device (torch.device): 在哪里算
        max_new_tokens (int): 每条最多写几个词元
        path (Path): 存到哪里
    """
    model.eval()
    for entry in tqdm(test_data, desc="回答", ncols=80):
        entry["model_response"] = generate_response(model, tokenizer, entry, device, max_new_tokens)
    part = path.with_suffix(".part")  # 先写在旁边，写完才改名：中途停下，也不会留下半个文件
    part.write_text(json.dumps(test_data, indent=4, ensure_ascii=False), encoding="utf-8")
    part.replace(path)
    for entry in test_data[:3]:
        question = entry["instruction"] + (f"　[{entry['input']}]" if entry["input"] else "")
        print(f"\n指令　　　{question}\n参考答案　{entry['output']}\n模型回答　{entry['model_response']}")
    # 一字不差才算对，只适合说法固定的题，如自带的数据；书上的题要请另一个模型打分（7.8 节，ollama_evaluate.py）。
    exact = sum(entry["model_response"] == entry["output"] for entry in test_data)
    print(f"\n与参考答案一字不差　{exact} / {len(test_data)}")


def ask(args):
    """问微调好的模型一句。

    参数:
        args (argparse.Namespace): 命令行参数，见 main

    异常:
        ValueError: 指令是空的，或还没有微调过
    """
    if not args.ask.strip():
        raise ValueError("--ask 是空的，请在引号里写上指令")
    path = OUTPUTS / f"{NAMES[args.size]}-sft.pth"
    if not path.is_file():
        raise ValueError(f"还没有 {path.name}，先运行 python ch07/main/gpt_instruction_finetuning.py --size {args.size}")
    device, (model, _) = pick_device(args.device), load_model(path)
    model.to(device).eval()
    entry = {"instruction": args.ask, "input": ""}
    max_new_tokens = SETTINGS[args.size]["max_new_tokens"]
    print(generate_response(model, tiktoken.get_encoding("gpt2"), entry, device, max_new_tokens))


def main():
    """指令微调；给了 --ask，就问微调好的模型一句。"""
    parser = argparse.ArgumentParser(description="7.2–7.7 节　指令微调：教 GPT 照着指令回答")
    parser.add_argument("--size", choices=SETTINGS, default="mini", help="从哪份预训练的权重开始（默认：mini）")
    parser.add_argument("--data", type=Path, help="指令数据，JSON（默认：原书的，没有就用自带的）")
    parser.add_argument("--device", default="auto", help="auto、mps、cuda 或 cpu（默认：auto）")
    parser.add_argument("--quick", action="store_true", help="只用几十条训练 1 轮，看看流程")
    parser.add_argument("--ask", metavar="指令", help="不训练，问微调好的模型一句")
    args = parser.parse_args()
    try:
        finetune(args) if args.ask is None else ask(args)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:  # 磁盘满了，没有权限
        parser.error(f"读写不了 {error.filename or OUTPUTS}：{error.strerror}")
    except KeyboardInterrupt:
        print("\n停下了。模型要到训练完才存，写到一半的不会盖掉以前的")
        sys.exit(130)


if __name__ == "__main__":
    main()
