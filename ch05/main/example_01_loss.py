"""第 5 章 · 5.1 节　损失：用一个数说清楚"模型猜得有多差"

读完你应该能回答：
    1. 从 logits 到损失要走哪几步？为什么是取对数、求平均、再取负？
    2. 困惑度（perplexity）48,726 是什么意思？为什么没训练过的模型都差不多是这个数？
    3. 训练损失和验证损失各用哪一段文本算？为什么要分开？

运行：
    python ch05/main/example_01_loss.py
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 14 秒，1.2 GB（2 核 CPU）

形状记号（全书统一）：b 批大小　t 序列长度（词元数）　d 嵌入维度　h 头数　k 每个头的维度（k = d / h）　V 词表大小
"""

import math
import os
import sys
from itertools import islice
from pathlib import Path

import tiktoken
import torch
import torch.nn as nn
from torch.utils.data import DataLoader, Dataset

# 改这里
START_CONTEXT = "Every effort moves you"  # 提示词
CONTEXT_LENGTH = 256  # GPT-2 是 1024；书上缩短到 256，只为省内存和时间
TRAIN_RATIO = 0.90  # 文本的前九成用来训练，后一成留着考试


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


# region 沿用 ch04/main: GPT_CONFIG_124M, LayerNorm, GELU, FeedForward, TransformerBlock, GPTModel, generate_text_simple
GPT_CONFIG_124M = {
    "vocab_size": 50257,
    "context_length": 1024,
    "emb_dim": 768,
    "n_heads": 12,
    "n_layers": 12,
    "drop_rate": 0.1,
    "qkv_bias": False,
}


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

# %% 5.1.1　没训练过的模型，写出来的是什么
config = {**GPT_CONFIG_124M, "context_length": CONTEXT_LENGTH}  # 其余与 GPT-2 small 相同
torch.manual_seed(123)
model = GPTModel(config)
model.eval()  # 关掉 dropout，否则同样的输入每次算出的数都不同
tokenizer = tiktoken.get_encoding("gpt2")


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


idx = text_to_token_ids(START_CONTEXT, tokenizer)  # (1, t)
token_ids = generate_text_simple(model, idx, max_new_tokens=10, context_size=CONTEXT_LENGTH)  # (1, t + 10)
generated_text = token_ids_to_text(token_ids, tokenizer)
print("【5.1.1】没训练过的模型接着写", generated_text)
# 胡话是看得出来的，但"有多胡"要有一个数，才能知道训练是在变好还是变坏，也才能求导。这个数就是损失（loss）。

# %% 5.1.2　两句话，每句三道题：看到前面的，猜下一个
# 目标就是输入右移一位：every 后面应该是 effort，every effort 后面应该是 moves ……
inputs = torch.tensor([[16833, 3626, 6100], [40, 1107, 588]])  # (b, t)　"every effort moves"、"I really like"
targets = torch.tensor([[3626, 6100, 345], [1107, 588, 11311]])  # (b, t)　" effort moves you"、" really like chocolate"
with torch.no_grad():  # 只看不学，不必记下求导用的中间结果
    logits = model(inputs)  # (b, t, V)
probas = torch.softmax(logits, dim=-1)  # (b, t, V)　最后一维是词表：每个位置给 50257 个词元各一个概率
print(f"\n【5.1.2】概率　{tuple(probas.shape)}　(b, t, V)")

chosen = torch.argmax(probas, dim=-1, keepdim=True)  # (b, t, 1)
print("每个位置概率最大的词元")
print(chosen)
print("第 1 句的目标", token_ids_to_text(targets[0], tokenizer))
print("第 1 句模型猜", token_ids_to_text(chosen[0].flatten(), tokenizer))

# %% 模型给"正确答案"的概率有多大
# 它猜什么并不重要，重要的是：正确的那个词元，它给了多少概率。用 targets 当下标，把这 6 个数挑出来。
# 理想是 1，瞎猜是 1/50257 ≈ 2.0e-05；下面 6 个数，是不是都在瞎猜的水平附近？
target_probas = torch.stack([probas[text_idx, [0, 1, 2], targets[text_idx]] for text_idx in (0, 1)])  # (b, t)
print("\n第 1 句目标的概率", target_probas[0])
print("第 2 句目标的概率", target_probas[1])

# %% 概率 → 损失：取对数，求平均，取负
# 取对数：整句话的概率是各步概率的乘积，几百个 1e-05 乘起来就成了 0；取了对数，乘变成加，数也不大不小。
log_probas = torch.log(target_probas.flatten())  # (b·t,)
# 求平均：与句子长短、批的大小无关，不同的实验才能比较。
avg_log_probas = log_probas.mean()
# 取负：概率越接近 1，对数越接近 0；习惯上"损失越小越好"，所以换个正号。
neg_avg_log_probas = -avg_log_probas
print("\n取对数", log_probas)
print("求平均", avg_log_probas)
print("取负　", neg_avg_log_probas)

# %% 上面几步合起来，就是交叉熵（cross entropy）
# cross_entropy 把 softmax、取对数、挑正确答案、平均、取负一次做完；所以它要的是 logits，不是概率。
# 把概率传进去不会报错，只是又做了一遍 softmax：就算概率全对，损失也降不到 9.82 以下，看起来像"训练不动"。
print(f"\nlogits　{tuple(logits.shape)}　(b, t, V)　　目标　{tuple(targets.shape)}　(b, t)")
logits_flat = logits.flatten(0, 1)  # (b·t, V)
targets_flat = targets.flatten()  # (b·t,)
print(f"展平后　{tuple(logits_flat.shape)}、{tuple(targets_flat.shape)}：6 道选择题，每题 50257 个选项")
loss = nn.functional.cross_entropy(logits_flat, targets_flat)
print("交叉熵", loss)
wrong_loss = nn.functional.cross_entropy(probas.flatten(0, 1), targets_flat)
chance = math.log(config["vocab_size"])  # 给每个词元同样的概率 1/V，损失正好是 ln V
print(f"误把概率当 logits 传进去　{wrong_loss:.4f}　（ln 50257 = {chance:.4f}）")

# %% 困惑度：把损失翻译成"在几个词元里犹豫"
# 如果在 N 个词元里均匀地瞎猜，损失就是 ln N；反过来，exp(损失) 就是 N。
perplexity = torch.exp(loss)
print("\n困惑度", perplexity)
print(f"相当于在约 {perplexity / 10000:.1f} 万个词元里犹豫，而词表一共才 {config['vocab_size']:,} 个")

# %% 5.1.3　训练集和验证集
path = find_data("the-verdict.txt", "story-en.txt")
text_data = path.read_text(encoding="utf-8")
total_tokens = len(tokenizer.encode(text_data))
print(f"\n【5.1.3】文本　{path}")
print("开头", repr(text_data[:99]))
print("结尾", repr(text_data[-99:]))
print("字符数", len(text_data))
print("词元数", total_tokens)

# 考题不能在练习册里出现过：验证损失低才是"学会了"，训练损失低可能只是"背下了"。
split_idx = int(TRAIN_RATIO * len(text_data))
train_data, val_data = text_data[:split_idx], text_data[split_idx:]

# stride 等于 max_length：样本首尾相接，不重叠，每个词元一轮只学一次。
torch.manual_seed(123)
train_loader = create_dataloader_v1(
    train_data, batch_size=2, max_length=CONTEXT_LENGTH, stride=CONTEXT_LENGTH, drop_last=True, shuffle=True
)
# 验证集不打乱、不丢尾巴：每次考同一份卷子，数字才能前后比较。
val_loader = create_dataloader_v1(
    val_data, batch_size=2, max_length=CONTEXT_LENGTH, stride=CONTEXT_LENGTH, drop_last=False, shuffle=False
)

train_tokens = val_tokens = 0
print("\n训练集")
for x, y in train_loader:
    print(f"  输入 {tuple(x.shape)}　目标 {tuple(y.shape)}　(b, t)")
    train_tokens += x.numel()
print("验证集")
for x, y in val_loader:
    print(f"  输入 {tuple(x.shape)}　目标 {tuple(y.shape)}　(b, t)")
    val_tokens += x.numel()
print(f"训练用的词元 {train_tokens}　验证用的词元 {val_tokens}　合计 {train_tokens + val_tokens}")


# %% 一批的损失，一个数据集的损失
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


# %% 训练前的损失
# 打乱次序会用掉随机数；重新设一次种子，这里的结果就只取决于种子，与前面遍历过几次数据无关。
torch.manual_seed(123)
device = torch.device("cpu")  # 核对书上的数字用 CPU；MPS 上第 7 位有效数字开始不同
with torch.no_grad():
    train_loss = calc_loss_loader(train_loader, model, device)
    val_loss = calc_loss_loader(val_loader, model, device)
print(f"\n训练前　训练损失 {train_loss:.4f}　验证损失 {val_loss:.4f}")

# %% 为什么比 ln 50257 = 10.82 还高一点点？
# 对所有词元一视同仁，损失正好是 ln V。随机的权重却会偏爱一些词元：偏爱得没有道理，猜错的代价就更大。
# 若 logits 像正态分布那样散开，多出来的部分约等于方差的一半。最后的层归一化加上 nn.Linear 的默认初始化，
# 让方差约为 1/3，与模型大小无关：所以没训练过的 GPT，不论大小，损失都在 10.82 + 0.17 = 10.99 附近。
with torch.no_grad():
    spread = model(next(iter(val_loader))[0]).var(dim=-1).mean().item()
print(f"一视同仁　ln 50257 = {chance:.2f}　　随机的偏爱　方差 / 2 = {spread / 2:.2f}　　合计 {chance + spread / 2:.2f}")

# %% 这个数字对吗？
print("\n这个数字对吗？")
book_text = "Every effort moves you rentingetic wasnم refres RexMeCHicular stren"
book_chosen = [16657, 339, 42826, 49906, 29669, 41751]
book_probas = torch.tensor([[7.4541e-05, 3.1061e-05, 1.1563e-05], [1.0337e-05, 5.6776e-05, 4.7559e-06]])
confirm("没训练过的模型写的话与原书相同", generated_text == book_text, "忘了 model.eval()，或创建各层的次序变了")
confirm(
    "猜的 6 个词元与原书相同：16657, 339, 42826, 49906, 29669, 41751",
    chosen.flatten().tolist() == book_chosen,
    "种子不是 123，或忘了 model.eval()",
)
confirm(
    "目标的 6 个概率与原书相同（4 位有效数字）",
    torch.allclose(target_probas, book_probas, rtol=1e-4, atol=0),
    "softmax 的 dim 不是最后一维",
)
confirm(
    f"一步步算的与 cross_entropy 相同：{loss:.4f}",
    torch.allclose(loss, neg_avg_log_probas),
    "展平时把 b、t 的次序弄反了",
)
confirm(
    f"训练损失 {train_loss:.2f} 与 ln 50257 = {chance:.2f} 相差不到 0.5：等于在整个词表里瞎猜",
    abs(train_loss - chance) < 0.5,
    "模型已经训练过，或损失没有对所有位置取平均",
)
confirm(
    f"训练和验证用的词元加起来（{train_tokens + val_tokens}）不超过全文（{total_tokens}）",
    0 < train_tokens + val_tokens <= total_tokens,
    "stride 小于 max_length，样本互相重叠了",
)
if path.name == "the-verdict.txt":
    confirm(
        "词元数 5145；训练 4608 + 验证 512 = 5120",
        (total_tokens, train_tokens, val_tokens) == (5145, 4608, 512),
        "stride 不等于 max_length，或没按 90% 切",
    )
    confirm(
        "训练前的两个损失与原书相同：10.9876 / 10.9811",
        abs(train_loss - 10.98758347829183) < 1e-4 and abs(val_loss - 10.98110580444336) < 1e-4,
        "算之前没有重新设种子，或模型不在 eval 模式",
    )

# %% 动手改
# 1. 把 model.eval() 注释掉：生成的话和 6 个概率全变了，因为 dropout 每次随机丢掉一部分；损失却还在 10.8 左右。
# 2. 把第一个 torch.manual_seed(123) 改成 124：胡话换了一种，损失仍是 10.99 左右。一个没训练过的模型有多差，与种子无关。
# 3. 把训练集的 stride 改成 128：样本一半重叠，训练用的词元从 4608 变成 8704，比全文还多，自查里有一条变成 ✗。
