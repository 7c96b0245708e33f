"""第 5 章 · 练习 5.4　从检查点接着训练一轮

题目：　在一个新的脚本里，把 5.4 节存的模型和优化器都读回来，接着训练一轮。不读优化器会怎样？
先想：　只读回模型、换一个新的 AdamW，第一步之后的训练损失会更低、一样，还是反而升高？（先想 10 秒，再运行）
解法：　① 先训练一个小模型，照 5.4 节存下模型和优化器；② 读回来：先照配置建好，再往里填；③ 用 train_model_simple 接着训练一轮；
　　　　④ 换一个新的优化器，从同一个地方再来一遍。
学到：　优化器要先建好、再 load_state_dict，学习率、走过的步数、每个参数的两份动量都会回来。少了它不报错，只是头几步走得不一样：
　　　　新的 AdamW 还没有动量，第一步几乎每个参数都迈出整整一个学习率；而训练到后面，本来只该迈很小的步子。

运行：
    python ch05/experiments/exercise_5_4_continue.py
    python ch05/experiments/exercise_5_4_continue.py --quick   # 存之前少训练几轮
    约 20 秒，1.0 GB（2 核 CPU）

原书接着训练的是它的 124M：第 0 步 0.271 / 6.545，第 5 步 0.244 / 6.614（随平台略有不同）。

形状记号：　n 样本数　b 批大小　t 序列长度（词元数）　d 嵌入维度　h 头数　k 每个头的维度　V 词表大小
"""

import argparse
import os
import sys
from itertools import islice
from pathlib import Path

import tiktoken
import torch
import torch.nn as nn
from torch.utils.data import DataLoader, Dataset

# 改这里：一个几秒钟就能训练好的小模型
CONFIG = {"vocab_size": 50257, "context_length": 64, "emb_dim": 64, "n_heads": 2, "n_layers": 2, "drop_rate": 0.1, "qkv_bias": False}
CHARACTERS = 6000  # 只用文章的开头：背一小段，几秒钟就够
LEARNING_RATE = 5e-3
EPOCHS = 10
CPU = torch.device("cpu")
SAVED = Path(__file__).resolve().parents[1] / "outputs" / "model_and_optimizer.pth"


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


# region 沿用 ch05/main: evaluate_model, generate_and_print_sample, train_model_simple
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


def train_and_save(train_loader, epochs):
    """训练一个小模型，照 5.4 节把模型和优化器存进同一个文件。

    参数:
        train_loader (DataLoader): 训练集
        epochs (int): 训练几轮
    """
    torch.manual_seed(123)
    model = GPTModel(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1)
    for _ in range(epochs):
        for inputs, targets in train_loader:
            optimizer.zero_grad()
            calc_loss_batch(inputs, targets, model, CPU).backward()
            optimizer.step()
    SAVED.parent.mkdir(exist_ok=True)
    torch.save({"config": CONFIG, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, SAVED)


def main():
    """存下一个检查点，读回来接着训练一轮；再换一个新的优化器，从同一个地方出发。"""
    parser = argparse.ArgumentParser(description="练习 5.4　从检查点接着训练一轮")
    parser.add_argument("--quick", action="store_true", help="存之前少训练几轮")
    args = parser.parse_args()
    path = find_data("the-verdict.txt", "story-en.txt")
    text = path.read_text(encoding="utf-8")[:CHARACTERS]
    split, t = int(0.90 * len(text)), CONFIG["context_length"]
    train_loader = create_dataloader_v1(text[:split], batch_size=2, max_length=t, stride=t)
    val_loader = create_dataloader_v1(text[split:], batch_size=2, max_length=t, stride=t, shuffle=False, drop_last=False)
    tokenizer = tiktoken.get_encoding("gpt2")

    print(f"① 用 {path.name} 的开头训练一个小模型……", flush=True)
    train_and_save(train_loader, EPOCHS // 2 if args.quick else EPOCHS)
    print(f"　 模型和优化器存到 {SAVED}")

    # ② 读回来。
    ckpt = torch.load(SAVED, map_location="cpu", weights_only=True)
    group, moments = ckpt["optimizer"]["param_groups"][0], ckpt["optimizer"]["state"][0]
    before = int(moments["step"])
    print(f"② 优化器里有：走过 {before} 步，学习率 {group['lr']}，权重衰减 {group['weight_decay']}，每个参数的 {list(moments)}")

    results = []
    for title in ("读回模型和优化器", "只读回模型，优化器是新的"):
        torch.manual_seed(123)  # 两遍用同一个种子：打乱的次序、dropout 都相同，差别只来自优化器
        model = GPTModel(ckpt["config"])
        model.load_state_dict(ckpt["model"])
        # 优化器的状态按参数的次序对应，所以要用同一个模型的 parameters() 来建，再往里填。
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1)
        if title == "读回模型和优化器":
            optimizer.load_state_dict(ckpt["optimizer"])
        start, _ = evaluate_model(model, train_loader, val_loader, CPU, None)  # None：看全部的批，差一点点的损失才比得出来
        print(f"\n③④ {title}　出发时　训练损失 {start:.3f}")
        losses, _, _ = train_model_simple(model, train_loader, val_loader, optimizer, CPU, 1, 5, None, "Every effort moves you", tokenizer)
        results.append((start, losses[0], int(optimizer.state_dict()["state"][0]["step"])))

    (start, loss, steps), (other_start, other_loss, other_steps) = results
    print(f"\n走一步之后的训练损失　读回优化器 {start:.3f} → {loss:.3f}　新的优化器 {other_start:.3f} → {other_loss:.3f}")

    print("\n这个数字对吗？")
    confirm(f"优化器接着数：{before} + {len(train_loader)} = {steps} 步", steps == before + len(train_loader), "优化器的状态没有读回来")
    confirm(f"新的优化器从头数：{other_steps} 步", other_steps == len(train_loader), "两遍用了同一个优化器")
    confirm("两遍出发时的损失相同：模型是一样的", start == other_start, "第一遍训练改动了检查点里的权重")
    confirm("走了一步就不同：优化器也是训练状态的一部分", loss != other_loss, "优化器没有读回来，两遍其实一样")


if __name__ == "__main__":
    main()
