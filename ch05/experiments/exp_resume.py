"""第 5 章 · 实验　训练到一半被杀死，怎样接着练，才与没断过一模一样？

问题：　训练到一半，进程被 kill -9。从检查点（checkpoint）接着练完，权重能与没断过的逐位相同吗？要存下哪些东西才够？
先猜：　书上 5.4 节存了模型和优化器。只恢复这两样，最后的权重会一样吗？还差什么？
看点：　① 全都恢复，最大的差是 0，一位也不差；② 少恢复一样会差多少；
　　　　③ python setup/copy_forward.py diff ch05/experiments/exp_resume.py：能接着练的训练循环，比书上的多了哪几行。
动手改：把 BASE 里的 drop_rate 改成 0.0，"少了随机数"的差还在吗？为什么？
　　　　再把 KILL_AT 改成 21（最后一轮的中间）：这次呢？（自查里那一条会变成 ✗）

运行：
    python ch05/experiments/exp_resume.py                                # 演示：训练、杀死、接着练；图片写到 ch05/outputs/
    python ch05/experiments/exp_resume.py --train --size mini            # 真的用它训练；存成 ch05/outputs/resume_mini.pth
    python ch05/experiments/exp_resume.py --train --size mini --resume   # 断了之后接着练
    约 50 秒，1.2 GB（2 核 CPU）
"""

import argparse
import contextlib
import hashlib
import io
import os
import subprocess
import sys
import tempfile
import time
import warnings
from itertools import islice
from pathlib import Path

import matplotlib.pyplot as plt
import tiktoken
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from torch.utils.data import DataLoader, Dataset

# 改这里
BASE = {"vocab_size": 50257, "context_length": 256, "drop_rate": 0.1, "qkv_bias": False}
MODEL_CONFIGS = {
    "tiny": BASE | {"emb_dim": 32, "n_heads": 2, "n_layers": 2},  # 演示用
    "mini": BASE | {"emb_dim": 192, "n_heads": 6, "n_layers": 4},
    "124M": BASE | {"emb_dim": 768, "n_heads": 12, "n_layers": 12},
}
TRAIN_SETTINGS = {
    "tiny": {"learning_rate": 1e-2, "num_epochs": 3, "eval_freq": 3, "eval_iter": 2},
    "mini": {"learning_rate": 1.5e-3, "num_epochs": 15, "eval_freq": 10, "eval_iter": 5},  # 与 gpt_train.py 相同
    "124M": {"learning_rate": 4e-4, "num_epochs": 10, "eval_freq": 5, "eval_iter": 5},
}
KILL_AT = 12  # 演示里，看到第几步的评估就杀死它：每轮 9 步，12 在第 2 轮的中间
BATCH_SIZE, START_CONTEXT = 2, "Every effort moves you"
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


# region 沿用 ch05/main: text_to_token_ids, token_ids_to_text, calc_loss_batch, calc_loss_loader, evaluate_model, generate_and_print_sample
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


def get_rng_state(device):
    """记下随机数发生器此刻的状态：打乱数据用 CPU 的，dropout 用计算设备的。

    参数:
        device (torch.device): 训练用的设备

    返回:
        dict: 设备名 → 状态
    """
    state = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state[device.type] = getattr(torch, device.type).get_rng_state()  # torch.cuda 或 torch.mps
    return state


def set_rng_state(state, device):
    """把随机数发生器恢复到 get_rng_state 记下的状态。

    参数:
        state (dict): get_rng_state 的返回值；在别的机器上存的，可能没有这种设备的那一项
        device (torch.device): 训练用的设备
    """
    torch.set_rng_state(state["cpu"])
    if device.type in state and device.type != "cpu":
        getattr(torch, device.type).set_rng_state(state[device.type])


# region 改写 ch05/main: train_model_simple
def train_model_simple(
    model, train_loader, val_loader, optimizer, device, num_epochs, eval_freq, eval_iter, start_context, tokenizer,
    p, save,  # 改：p 是进度，走到了哪里、损失记到了哪里；save 是存检查点的函数
):
    """训练循环，随时可以断，断了可以接着练。（原版详解见 ch05/main/example_02_training_loop.py）"""
    train_losses, val_losses, track_tokens_seen = p["losses"]  # 改：接着上次的往后记
    tokens_seen, global_step = p["tokens_seen"], p["step"]  # 改：从上次的数接着数
    for epoch in range(p["epoch"], num_epochs):  # 改：从上次的那一轮开始
        model.train()
        # 改：取第一批时，会用随机数打乱这一轮的次序。断在一轮中间，就先回到这一轮开头的状态，打乱出同样的次序，
        #     跳过学过的批，再回到断开时的状态，后面的 dropout 才接得上。断在两轮之间，什么也不用跳。
        now = get_rng_state(device)
        p["epoch_rng"] = p["epoch_rng"] if p["batch"] > 0 else now
        set_rng_state(p["epoch_rng"], device)
        batches = iter(train_loader)
        if p["batch"] > 0:
            next(islice(batches, p["batch"] - 1, None))
            set_rng_state(now, device)
        for input_batch, target_batch in batches:  # 改：只剩还没学的批
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
            # 改：每走完一步，记下走到了哪里，交给 save；存不存、多久存一次，由它定
            p.update(epoch=epoch, batch=p["batch"] + 1, step=global_step, tokens_seen=tokens_seen)
            save(p)
        generate_and_print_sample(model, tokenizer, device, start_context)
        p.update(epoch=epoch + 1, batch=0)  # 改：下一轮从第一批开始
        save(p)  # 改：一轮结束也存
    return train_losses, val_losses, track_tokens_seen


# endregion


def save_checkpoint(path, content):
    """存检查点：先写到临时文件，写完整了再改名，所以随时断电也不会留下半个文件。

    参数:
        path (Path): 最终的文件名
        content (dict): 要存的内容

    异常:
        OSError: 磁盘满了，或没有写的权限；这时原来的检查点完好无损
    """
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())  # 等数据真正落盘：否则断电时，改了名的也可能是空文件
        os.replace(part, path)  # 改名是一步到位的，不存在"改了一半"
    except (OSError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        raise OSError(f"检查点写不进 {path}（磁盘满了，或没有写的权限），请腾出空间或用 --out 换个文件夹") from error


def load_checkpoint(path):
    """读检查点。

    参数:
        path (Path): 文件名

    返回:
        dict: save_checkpoint 存下的内容，张量都在 CPU 上

    异常:
        ValueError: 文件不存在、已损坏，或不是这个脚本存的检查点
    """
    if not path.is_file():
        raise ValueError(f"找不到检查点 {path}，请先去掉 --resume 从头训练")
    try:
        # weights_only=True：只读数字，不执行文件里的代码。
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 遇到别人的文件，torch 会先用英文警告几句；我们只说下面那一句
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # 损坏的文件能引出各种异常，处理办法都一样
        raise ValueError(f"{path} 读不出来：文件已损坏，或者不是检查点") from None
    needed = {"config", "seed", "text", "model", "optimizer", "progress"}
    if not isinstance(content, dict) or not needed <= content.keys():
        raise ValueError(f"{path} 不是这个脚本存的检查点，里面缺了配置、权重、优化器或进度")
    return content


def train(args, forget=None):
    """按命令行参数训练，边训练边存检查点。

    参数:
        args (argparse.Namespace): 命令行参数，见 main
        forget (str 或 None): 演示用，接着练时故意不恢复哪一样："优化器"、"随机数" 或 "数据位置"

    返回:
        dict: 最后的检查点

    异常:
        ValueError: 参数、文本或检查点有问题，或损失成了 nan
        OSError: 写不了文件
    """
    config, settings = MODEL_CONFIGS[args.size], TRAIN_SETTINGS[args.size]
    num_epochs = settings["num_epochs"] if args.epochs is None else args.epochs
    if num_epochs < 1 or not 0 <= args.seed < 2**63:
        raise ValueError(f"--epochs 至少是 1，--seed 应在 0 到 2⁶³ − 1 之间；得到的是 {num_epochs} 和 {args.seed}")
    device, t = pick_device(args.device), config["context_length"]
    path = Path(args.text) if args.text else find_data("the-verdict.txt", "story-en.txt")
    text, tokenizer = read_text(path), tiktoken.get_encoding("gpt2")
    if text_to_token_ids(text, tokenizer).numel() < 11 * t:
        raise ValueError(f"{path} 太短：训练和验证一共要 {11 * t} 个词元，请换长一点的文本")
    split = int(0.90 * len(text))
    train_loader = create_dataloader_v1(text[:split], BATCH_SIZE, max_length=t, stride=t)
    val_loader = create_dataloader_v1(text[split:], BATCH_SIZE, max_length=t, stride=t, shuffle=False, drop_last=False)

    torch.manual_seed(args.seed)
    model = GPTModel(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings["learning_rate"], weight_decay=0.1)
    progress = {"epoch": 0, "batch": 0, "step": -1, "tokens_seen": 0, "losses": [[], [], []], "epoch_rng": None}
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint = args.out / f"resume_{args.size}.pth"
    # 检查点里写明是哪份文本、哪个种子、哪种配置：换了任何一样还接着练，就不是同一次训练了。
    about = {"config": config, "seed": args.seed, "text": hashlib.sha256(text.encode()).hexdigest()}
    if args.resume:
        content = load_checkpoint(checkpoint)
        if any(content[key] != value for key, value in about.items()):
            raise ValueError(f"{checkpoint} 是用另一份文本、种子或配置训练的，接不上；去掉 --resume 从头训练")
        try:
            model.load_state_dict(content["model"])
            if forget != "优化器":
                optimizer.load_state_dict(content["optimizer"])
            if forget != "随机数":
                set_rng_state(content["progress"]["rng"], device)
            progress = content["progress"] | ({"batch": 0} if forget == "数据位置" else {})
            print(f"接着　{checkpoint}：已训练到第 {progress['epoch'] + 1} 轮，共 {progress['step'] + 1} 步")
        except Exception:  # 名字都对、内容不对的文件，能引出各种异常
            raise ValueError(f"{checkpoint} 的内容不对，接不上；去掉 --resume 从头训练") from None

    last_saved = time.monotonic()

    def save(progress):
        """存下接着训练所需的一切。离上次存还不到 --save-every 秒就跳过，训练完了一定存。"""
        nonlocal last_saved
        if time.monotonic() - last_saved < args.save_every and progress["epoch"] < num_epochs:
            return
        progress["rng"] = get_rng_state(device)
        states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "progress": progress}
        save_checkpoint(checkpoint, about | states)
        last_saved = time.monotonic()

    try:
        train_model_simple(
            model, train_loader, val_loader, optimizer, device, num_epochs, settings["eval_freq"],
            settings["eval_iter"], START_CONTEXT, tokenizer, progress, save,
        )
    except KeyboardInterrupt:
        left = f"加上 --resume 就能从 {checkpoint} 接着训练" if checkpoint.exists() else "还没来得及存检查点"
        print(f"\n停下了。{left}")
        sys.exit(130)
    print(f"检查点　{checkpoint}")
    return load_checkpoint(checkpoint)


def demo(parser, quick):
    """演示：练完一遍作标准；再练一遍，练到一半杀死，接着练；最后每次少恢复一样。

    参数:
        parser (argparse.ArgumentParser): main 的命令行参数
        quick (bool): 只训练 1 轮，在中间杀死
    """
    num_epochs, kill_at = (1, 3) if quick else (TRAIN_SETTINGS["tiny"]["num_epochs"], KILL_AT)
    with tempfile.TemporaryDirectory() as folder:
        command = ["--train", "--device", "cpu", "--epochs", str(num_epochs), "--out", folder]
        with contextlib.redirect_stdout(io.StringIO()):
            whole = train(parser.parse_args(command))
        print(f"① 一口气练完　{whole['progress']['step'] + 1} 步")

        print(f"② 再练一遍，看到第 {kill_at} 步就 kill -9")
        (Path(folder) / "resume_tiny.pth").unlink()
        env = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
        victim = [sys.executable, __file__, *command, "--save-every", "0"]  # 每走一步都存
        victim = subprocess.Popen(victim, stdout=subprocess.PIPE, encoding="utf-8", env=env)
        for line in victim.stdout:
            if "步" in line:
                print("    " + line, end="")
            if f"第 {kill_at:3} 步" in line:
                break
        victim.kill()  # 它没有机会收拾：可能正在算梯度，也可能正在写检查点
        victim.wait()
        killed = load_checkpoint(Path(folder) / "resume_tiny.pth")  # 只要改过名，就一定读得出来
        print(f"    留下的检查点：第 {killed['progress']['step']} 步")

        print("③ 从那里接着练，每次少恢复一样")
        ends = {}
        for forget in (None, "随机数", "数据位置", "优化器"):
            save_checkpoint(Path(folder) / "resume_tiny.pth", killed)
            with contextlib.redirect_stdout(io.StringIO()):
                ends[forget] = train(parser.parse_args([*command, "--resume"]), forget)

    runs, gaps = {"没断过": whole}, {}
    for forget, end in ends.items():
        pairs = [(end["model"][name].float(), tensor.float()) for name, tensor in whole["model"].items()]
        gaps[forget] = max((ours - theirs).abs().max().item() for ours, theirs in pairs)
        title = f"少了{forget}" if forget else "全都恢复"
        runs[title] = end
        print(f"  {title:　<6}　与没断过的权重最多差 {gaps[forget]:.1e}")
    # 少恢复一样，损失不一定更高；但那已经是另一次训练了：重现不出来，也没法与别的实验比较。

    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for title, content in runs.items():
        losses = content["progress"]["losses"][0]
        steps = [step * TRAIN_SETTINGS["tiny"]["eval_freq"] for step in range(len(losses))]
        late = [(step, loss) for step, loss in zip(steps, losses) if step > kill_at - 4]  # 前面都一样，只画被杀死前后
        look = {"linewidth": 5, "alpha": 0.4} if content is whole else {"linestyle": "--"}
        axis.plot(*zip(*late), label=title, **look)
    axis.axvline(killed["progress"]["step"], color="gray", linestyle=":")
    axis.set_xlabel("步（虚线：被杀死时的检查点）")
    axis.set_ylabel("训练损失")
    axis.legend()
    OUTPUTS.mkdir(exist_ok=True)
    figure.savefig(OUTPUTS / "resume.png", dpi=150)
    print(f"图片　{OUTPUTS / 'resume.png'}")

    print("\n这个数字对吗？")
    same = all(torch.equal(ends[None]["model"][name], whole["model"][name]) for name in whole["model"])
    confirm("全都恢复：每个权重都与没断过的逐位相同", same, "随机数、优化器或数据位置有一样没有接上")
    same_losses = ends[None]["progress"]["losses"] == whole["progress"]["losses"]
    confirm("全都恢复：每次评估的损失也逐位相同", same_losses, "进度没有接上")
    for forget in ("随机数", "数据位置", "优化器"):
        confirm(f"少了{forget}就不同", gaps[forget] > 0, "其实还是恢复了它，或后面没有用到它")


def main():
    """不带参数是演示；加上 --train 是真的训练。"""
    parser = argparse.ArgumentParser(description="实验　断了能接着练的训练")
    parser.add_argument("--train", action="store_true", help="真的训练（默认：演示杀死与接着练）；后面的参数是给它的")
    parser.add_argument("--size", default="tiny", choices=MODEL_CONFIGS, help="tiny（默认）、mini 或 124M")
    parser.add_argument("--text", help="训练文本，UTF-8 编码（默认：找到的 the-verdict.txt，没有就用自带的英文短篇）")
    parser.add_argument("--epochs", type=int, help="总共几轮（默认：tiny 3，mini 15，124M 10）")
    parser.add_argument("--resume", action="store_true", help="从上次的检查点接着训练")
    parser.add_argument("--save-every", type=float, default=30, help="最多隔几秒存一次（默认：30）")
    parser.add_argument("--out", type=Path, default=OUTPUTS, help="检查点写到哪个文件夹（默认：ch05/outputs）")
    parser.add_argument("--seed", type=int, default=123, help="随机种子（默认：123）")
    parser.add_argument("--device", default="auto", help="auto、mps、cuda 或 cpu（默认：auto）")
    parser.add_argument("--quick", action="store_true", help="演示只训练 1 轮")
    args = parser.parse_args()
    if args.resume and not args.train:
        parser.error("--resume 要和 --train 一起用")
    try:
        train(args) if args.train else demo(parser, args.quick)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
