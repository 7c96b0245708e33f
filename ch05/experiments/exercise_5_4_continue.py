"""第 5 章 · 练习 5.4　从检查点接着训练一轮

题目：　在一个新的脚本里，把 5.4 节存的模型和优化器都读回来，接着训练一轮。不读优化器会怎样？
先想：　只读回模型、换一个新的 AdamW，第一步之后的训练损失会更低、一样，还是反而升高？（先想 10 秒，再运行）
解法：　① 读检查点：配置、模型、优化器；② 先按配置建模型和优化器，再往里填；③ 用 train_model_simple 接着训练一轮；④ 换一个新的优化器，再来一遍。
学到：　优化器要先建好、再 load_state_dict，学习率、走过的步数、每个参数的两份动量都会回来。少了它不报错，只是训练损失先跳高（训练得久的模型尤其明显）：
　　　　新的 AdamW 还没有动量，第一步几乎每个参数都迈出整整一个学习率；而训练到后面，本来只该迈很小的步子。

运行：
    python ch05/experiments/exercise_5_4_continue.py           # 有 ch05/outputs/gpt_mini.pth 就接着它，没有就当场训练一个小的
    python ch05/experiments/exercise_5_4_continue.py --quick   # 只用三分之一的训练集
    约 26 秒，1.3 GB（2 核 CPU）

原书接着训练的是它的 124M：第 0 步 0.271 / 6.545，第 5 步 0.244 / 6.614（随平台略有不同）。

形状记号：　b 批大小　　t 序列长度（token 数）　　d 嵌入维度　　h 头数　　k 每个头的维度　　V 词表大小
"""

import argparse
import hashlib
import os
import sys
import tempfile
import warnings
from itertools import islice
from pathlib import Path

import tiktoken
import torch
import torch.nn as nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
CPU = torch.device("cpu")


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


# region 沿用 ch05/main/gpt_train.py: text_to_token_ids, token_ids_to_text, calc_loss_batch, calc_loss_loader, evaluate_model, load_checkpoint
def text_to_token_ids(text, tokenizer):
    """文本 → 模型的输入。（详解见 ch05/main/gpt_train.py）"""
    encoded = tokenizer.encode(text, allowed_special={"<|endoftext|>"})
    return torch.tensor(encoded).unsqueeze(0)  # (1, t)


def token_ids_to_text(token_ids, tokenizer):
    """模型的输出 → 文本。（详解见 ch05/main/gpt_train.py）"""
    return tokenizer.decode(token_ids.squeeze(0).tolist())


def calc_loss_batch(input_batch, target_batch, model, device):
    """一批数据的损失：模型给正确的下一个词元的概率，取负对数，再对所有位置求平均。（详解见 ch05/main/gpt_train.py）"""
    input_batch, target_batch = input_batch.to(device), target_batch.to(device)
    logits = model(input_batch)  # (b, t, V)
    return nn.functional.cross_entropy(logits.flatten(0, 1), target_batch.flatten())  # (b·t, V)，(b·t,)


def calc_loss_loader(data_loader, model, device, num_batches=None):
    """一个数据集的平均损失。（详解见 ch05/main/gpt_train.py）"""
    losses = [calc_loss_batch(inputs, targets, model, device).item() for inputs, targets in islice(data_loader, num_batches)]
    return sum(losses) / len(losses) if losses else float("nan")


def evaluate_model(model, train_loader, val_loader, device, eval_iter):
    """在训练集和验证集上各看几批，估计损失。（详解见 ch05/main/gpt_train.py）"""
    model.eval()
    with torch.no_grad():
        train_loss = calc_loss_loader(train_loader, model, device, num_batches=eval_iter)
        val_loss = calc_loss_loader(val_loader, model, device, num_batches=eval_iter)
    model.train()
    return train_loss, val_loss


def load_checkpoint(path):
    """读检查点。（详解见 ch05/main/gpt_train.py）"""
    if not path.is_file():
        raise ValueError(f"找不到检查点 {path}，请先运行 python ch05/main/gpt_train.py")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        raise ValueError(f"{path} 读不出来：文件已损坏，或者不是检查点") from None
    if not isinstance(content, dict) or not {"config", "seed", "text", "initial", "model", "optimizer", "progress"} <= content.keys():
        raise ValueError(f"{path} 不是 gpt_train.py 存的检查点，里面缺了配置、权重、优化器或进度")
    return content


# endregion


# region 沿用 ch05/main/gpt_train.py: generate_and_print_sample, get_rng_state, set_rng_state, train_model_simple
def generate_and_print_sample(model, tokenizer, device, start_context):
    """让模型接着提示词写 50 个词元，印成一行：看数字不如看它说的话。（详解见 ch05/main/gpt_train.py）"""
    model.eval()
    context_size = model.pos_emb.weight.shape[0]
    encoded = text_to_token_ids(start_context, tokenizer).to(device)
    token_ids = generate_text_simple(model, encoded, max_new_tokens=50, context_size=context_size)
    tqdm.write("    " + token_ids_to_text(token_ids, tokenizer).replace("\n", " "))
    model.train()


def get_rng_state(device):
    """记下随机数发生器此刻的状态：打乱数据用 CPU 的，dropout 用计算设备的。（详解见 ch05/main/gpt_train.py）"""
    state = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state()
    return state


def set_rng_state(state, device):
    """把随机数发生器恢复到 get_rng_state 记下的状态。（详解见 ch05/main/gpt_train.py）"""
    torch.set_rng_state(state["cpu"])
    if device.type in state and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state[device.type])


def train_model_simple(
    model, train_loader, val_loader, optimizer, device, num_epochs, eval_freq, eval_iter, start_context, tokenizer, progress=None, save=None
):
    """训练循环：一批批地看数据，每批算损失、求梯度、更新权重。（详解见 ch05/main/gpt_train.py）"""
    if progress is None:
        progress = {"epoch": 0, "batch": 0, "step": -1, "tokens_seen": 0, "train_losses": [], "val_losses": [], "track_tokens_seen": []}
    p = progress
    tokens_per_epoch = len(train_loader) * train_loader.batch_size * train_loader.dataset.input_ids.shape[1]
    bar = tqdm(total=num_epochs * tokens_per_epoch, initial=p["tokens_seen"], unit=" 词元", unit_scale=True, desc="训练", mininterval=1, ncols=80)
    for epoch in range(p["epoch"], num_epochs):
        model.train()
        now = get_rng_state(device)
        if p["batch"] == 0:
            p["epoch_rng"] = now
        set_rng_state(p["epoch_rng"], device)
        batches = iter(train_loader)
        if p["batch"] > 0:
            next(islice(batches, p["batch"] - 1, None))
            set_rng_state(now, device)
        for input_batch, target_batch in batches:
            optimizer.zero_grad()
            loss = calc_loss_batch(input_batch, target_batch, model, device)
            loss.backward()
            optimizer.step()
            p["tokens_seen"] += input_batch.numel()
            p["step"] += 1
            p["batch"] += 1
            bar.update(input_batch.numel())
            if p["step"] % eval_freq == 0:
                train_loss, val_loss = evaluate_model(model, train_loader, val_loader, device, eval_iter)
                p["train_losses"].append(train_loss)
                p["val_losses"].append(val_loss)
                p["track_tokens_seen"].append(p["tokens_seen"])
                tqdm.write(f"第 {epoch + 1:2} 轮　第 {p['step']:3} 步　训练损失 {train_loss:.3f}　验证损失 {val_loss:.3f}")
                if save:
                    save(p)
        generate_and_print_sample(model, tokenizer, device, start_context)
        p["epoch"], p["batch"] = epoch + 1, 0
        if save:
            save(p)
    bar.close()
    return p["train_losses"], p["val_losses"], p["track_tokens_seen"]


# endregion


def make_loaders(text, t, share=1.0):
    """前 90% 训练，后 10% 验证，与 gpt_train.py 相同。

    参数:
        text (str): 文本
        t (int): 每个样本的长度
        share (float): 训练集只用多少

    返回:
        tuple[DataLoader, DataLoader]: 训练集、验证集
    """
    split = int(0.90 * len(text))
    train_loader = create_dataloader_v1(text[: int(split * share)], 2, max_length=t, stride=t)
    return train_loader, create_dataloader_v1(text[split:], 2, max_length=t, stride=t, shuffle=False, drop_last=False)


def train_and_save(text, path, epochs):
    """没有检查点时：当场训练一个小模型，照原书 5.4 节存下模型和优化器。

    参数:
        text (str): 文本
        path (Path): 存到哪里
        epochs (int): 训练几轮
    """
    config = {"vocab_size": 50257, "context_length": 64, "emb_dim": 64, "n_heads": 2, "n_layers": 2, "drop_rate": 0.1, "qkv_bias": False}
    train_loader, _ = make_loaders(text, config["context_length"])
    torch.manual_seed(123)
    model = GPTModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.1)
    for inputs, targets in tqdm([batch for _ in range(epochs) for batch in train_loader], desc="先训练一个小模型", ncols=80):
        optimizer.zero_grad()
        calc_loss_batch(inputs, targets, model, CPU).backward()
        optimizer.step()
    torch.save({"config": config, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)


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

os.environ["TIKTOKEN_CACHE_DIR"] = str(find_data("tiktoken"))  # GPT-2 的词表由 setup/run.sh 放好，不联网


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def main():
    """读回检查点，接着训练一轮；再换一个新的优化器，从同一个地方出发。"""
    parser = argparse.ArgumentParser(description="练习 5.4　从检查点接着训练一轮")
    parser.add_argument("--quick", action="store_true", help="只用三分之一的训练集")
    args = parser.parse_args()
    try:
        paths = [find_data("the-verdict.txt", "story-en.txt"), find_data("story-en.txt")]
        texts = [read_text(path) for path in paths]
        which = 0
        try:
            content = load_checkpoint(OUTPUTS / "gpt_mini.pth")
            origin = f"gpt_train.py 存的 {OUTPUTS / 'gpt_mini.pth'}"
            digests = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
            if content["text"] in digests:  # 当初用哪一份文本训练，就接着用哪一份
                which = digests.index(content["text"])
            else:
                origin += "，当初是用别的文本训练的，下面等于换了教材"
            text = texts[which]
        except ValueError:
            text = texts[0][:4000]  # 背一小段，几秒钟就够
            with tempfile.TemporaryDirectory() as folder:
                train_and_save(text, Path(folder) / "model_and_optimizer.pth", 3 if args.quick else 6)
                content = torch.load(Path(folder) / "model_and_optimizer.pth", map_location="cpu", weights_only=True)
            origin = "当场训练的小模型（先运行 python ch05/main/gpt_train.py，就换成 mini）"
        config = content["config"]
        train_loader, val_loader = make_loaders(text, config["context_length"], 0.34 if args.quick else 1.0)
        tokenizer = tiktoken.get_encoding("gpt2")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    groups = content["optimizer"]["param_groups"][0]
    print(f"① 检查点　{origin}\n　 文本　　{paths[which]}")
    steps_before = int(content["optimizer"]["state"][0]["step"])
    print(f"　 优化器　走过 {steps_before} 步，学习率 {groups['lr']}，权重衰减 {groups['weight_decay']}，给每个参数记着 {list(content['optimizer']['state'][0])}")

    results, eval_iter = {}, None  # None：评估时看全部的批。只看 5 批的话，每次打乱后看到的不是同样的 5 批，差一点点的损失就没法比
    for title in ("读回模型和优化器", "只读回模型，优化器是新的"):
        # 两遍用同一个种子：打乱的次序、dropout 都相同，差别只来自优化器。
        torch.manual_seed(123)
        # ② 先建好，再填。优化器的状态按参数的次序对应，所以要用同一个模型的 parameters() 来建。
        model = GPTModel(config)
        model.load_state_dict(content["model"])
        optimizer = torch.optim.AdamW(model.parameters(), lr=groups["lr"], weight_decay=groups["weight_decay"])
        if title == "读回模型和优化器":
            optimizer.load_state_dict(content["optimizer"])  # 学习率等也一并改成存的时候的
        start = evaluate_model(model, train_loader, val_loader, CPU, eval_iter)
        # ③ 接着训练一轮
        print(f"\n③④ {title}　出发时　训练损失 {start[0]:.3f}　验证损失 {start[1]:.3f}")
        losses = train_model_simple(model, train_loader, val_loader, optimizer, CPU, 1, 5, eval_iter, "Every effort moves you", tokenizer)
        results[title] = (start, losses[0], int(optimizer.state_dict()["state"][0]["step"]))

    (start, losses, steps), (other_start, other_losses, other_steps) = results.values()
    print(f"\n第 0 步之后的训练损失　读回优化器 {start[0]:.3f} → {losses[0]:.3f}　新的优化器 {other_start[0]:.3f} → {other_losses[0]:.3f}")

    print("\n这个数字对吗？")
    confirm(f"优化器接着数：{steps_before} + {len(train_loader)} = {steps} 步", steps == steps_before + len(train_loader), "优化器的状态没有读回来")
    confirm(f"新的优化器从头数：{other_steps} 步", other_steps == len(train_loader), "两遍用了同一个优化器")
    confirm("两遍出发时的损失相同：模型是一样的", start == other_start, "第一遍训练改动了检查点里的权重")
    confirm("走了一步就不同：优化器也是训练状态的一部分", losses[0] != other_losses[0], "优化器没有读回来，两遍其实一样")


if __name__ == "__main__":
    main()
