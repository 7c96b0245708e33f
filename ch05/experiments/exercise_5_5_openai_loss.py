"""第 5 章 · 练习 5.5　OpenAI 的模型没见过这篇文章吗？量一量它的损失

题目：　把 OpenAI 的 GPT-2 124M 装进 GPTModel，在 the-verdict.txt 的训练集和验证集上各量一次损失。这两个数说明什么？
先想：　自己训练的模型，训练损失 0.5，验证损失 5.8。OpenAI 的没用这篇文章专门训练过，两个损失谁高谁低，差多少？（先想 10 秒，再运行）
解法：　① 装上权重；② 照 5.1.3 节切出训练集和验证集（长 256，批大小 2）；③ 各量一次，比较两个数的差。
学到：　OpenAI 的 124M 是 3.7547 / 3.5596：两个差不多，所以它没有把"训练集"那部分背下来，谈不上过拟合；
　　　　验证损失更低，只是后面那段碰巧好猜。
　　　　但也不能说它没见过：《The Verdict》是 1908 年的公版书，很可能就在它的训练数据里，而且两部分都见过。
　　　　真要评估，得用模型出来之后才写的文章。
　　　　自己训练的 mini，训练损失低、验证损失高，差好几倍：那是背书。

运行：
    python ch05/experiments/exercise_5_5_openai_loss.py                 # 有 OpenAI 的 124M 就量它，没有就量自己训练的 mini
    python ch05/experiments/exercise_5_5_openai_loss.py --size 1558M    # 原书也量了它：3.3046 / 3.1195
    python ch05/experiments/exercise_5_5_openai_loss.py --quick         # 训练集只看 2 批
    mini 约 5 秒，0.7 GB；124M 约 15 秒，1.5 GB（2 核 CPU）

形状记号：　n 样本数　b 批大小　t 序列长度（词元数）　d 嵌入维度　h 头数　k 每个头的维度　V 词表大小
"""

import argparse
import math
import os
import sys
from itertools import islice
from pathlib import Path

import tiktoken
import torch
import torch.nn as nn
from torch.utils.data import DataLoader, Dataset

CPU = torch.device("cpu")
BOOK = {"124M": (3.7547, 3.5596), "1558M": (3.3046, 3.1195)}  # 原书在 the-verdict.txt 上量到的


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


# region 沿用 ch05/main: calc_loss_batch, calc_loss_loader
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


def main():
    """装上权重，在训练集和验证集上各量一次损失。"""
    parser = argparse.ArgumentParser(description="练习 5.5　OpenAI 的模型在这篇文章上的损失")
    parser.add_argument("--size", choices=["124M", "355M", "774M", "1558M"], help="OpenAI 的哪种规模（默认：124M，没有就是 mini）")
    parser.add_argument("--quick", action="store_true", help="训练集只看 2 批")
    args = parser.parse_args()

    # ① 装上权重
    weights = find_data(f"gpt2-{args.size}.pth") if args.size else find_data("gpt2-124M.pth", "gpt_mini.pth")
    ckpt = torch.load(weights, map_location="cpu", weights_only=True)
    model = GPTModel(ckpt["config"])
    model.load_state_dict(ckpt["model"])
    model.eval()  # 关掉 dropout，损失才是模型的真实水平

    # ② 切出训练集和验证集
    path = find_data("the-verdict.txt", "story-en.txt")
    text = path.read_text(encoding="utf-8")
    split, t = int(0.90 * len(text)), min(256, ckpt["config"]["context_length"])  # OpenAI 的能看 1024 个，但为了与前面比，也用 256
    train_loader = create_dataloader_v1(text[:split], batch_size=2, max_length=t, stride=t)
    val_loader = create_dataloader_v1(text[split:], batch_size=2, max_length=t, stride=t, shuffle=False, drop_last=False)
    print(f"① 模型　{weights}\n② 文本　{path}　训练 {len(train_loader)} 批，验证 {len(val_loader)} 批，每个样本 {t} 个词元")

    # ③ 各量一次
    torch.manual_seed(123)
    with torch.no_grad():
        train_loss = calc_loss_loader(train_loader, model, CPU, num_batches=2 if args.quick else None)
        val_loss = calc_loss_loader(val_loader, model, CPU)
    gap = val_loss - train_loss
    perplexity = f"{math.exp(train_loss):,.0f} / {math.exp(val_loss):,.0f}"
    print(f"③ 训练损失 {train_loss:.4f}　验证损失 {val_loss:.4f}　差 {gap:+.4f}　困惑度 {perplexity}")
    if gap > 1:
        print("   验证损失高得多：模型在背训练集（过拟合）")
    else:
        print("   两个差不多：看不出它背过其中一部分；但两部分都见过的话，也是这样")
    if weights.name == "gpt_mini.pth":
        print("   （OpenAI 的 124M 在 the-verdict.txt 上是 3.7547 / 3.5596；要量它，先下载，再运行 python ch05/main/gpt_download.py）")

    print("\n这个数字对吗？")
    # 不用 cross_entropy，照 5.1.2 节一步步算一遍：目标的概率 → 取对数 → 平均 → 取负。
    inputs, targets = next(iter(val_loader))
    with torch.no_grad():
        log_probas = torch.log_softmax(model(inputs), dim=-1)  # (b, t, V)
        by_hand = -log_probas.gather(-1, targets.unsqueeze(-1)).mean().item()
        by_function = calc_loss_batch(inputs, targets, model, CPU).item()
    confirm(f"照定义一步步算，验证集第一批也是 {by_function:.4f}", abs(by_hand - by_function) < 1e-3, "目标没有右移一位，或漏了取负")
    if path.name != "the-verdict.txt" or args.quick:
        return
    if abs(model.tok_emb.weight[-1, -1].item() - 0.12067825) < 1e-6:  # OpenAI 的 124M 才有这个数；别人的权重，不与书比
        same = max(abs(train_loss - BOOK["124M"][0]), abs(val_loss - BOOK["124M"][1])) < 2e-3
        confirm("与原书相同：3.7547 / 3.5596", same, "权重装错了地方，或样本的长度不是 256")
    elif args.size in BOOK:
        print(f"  原书用 OpenAI 的 {args.size} 量到 {BOOK[args.size][0]} / {BOOK[args.size][1]}")


if __name__ == "__main__":
    main()
