"""第 4 章 · 实验　分组查询注意力（GQA）：几个头合用一份键和值，省多少，亏多少？

问题：　8 个头原来各有一份键和值；改成 4 份、2 份、1 份，KV 缓存小几倍？损失变大的量，比换个随机种子的差别大吗？
先猜：　缓存与份数成正比；那么 1 份键和值，模型会只剩八分之一的本事吗？（先想 10 秒，再运行）
看点：　① 实测的缓存与公式一个字节不差；② 省下的参数远没有省下的缓存多；③ 右图几条曲线几乎重合，看它们的差别有没有超过灰带。
动手改：1. --groups 1 只留多查询注意力（MQA）；--groups 3 会被拒绝，因为 8 不能分成 3 组。
        2. 换成书上的写法：把 queries = queries.reshape(…) 一行换成 keys, values = (each.repeat_interleave(h // g, dim=1) for each in (keys, values))，
           再把 weights.reshape(…) 换成 weights：结果不变，「走一步」一列变慢，省下的读写又花回去了。
        3. 再把其中的 repeat_interleave(h // g, dim=1) 换成 repeat(1, h // g, 1, 1)：程序照样跑，--groups 2 的自查变成 ✗，因为头认错了组。

运行：
    python ch04/experiments/exp_gqa.py               # 图片写到 ch04/outputs/
    python ch04/experiments/exp_gqa.py --quick
    约 55 秒，0.4 GB（2 核 CPU）

形状记号：b 批大小　t 这次送进来几个词元　s 看得见几个（缓存里的加新来的）　d 嵌入维度　h 头数　g 键和值有几份　k 每个头的维度　V 词表大小
"""

import argparse
import os
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"


def calc_kv_bytes_total(batch, context_length, emb_dim, n_heads, n_kv_heads, n_layers, bytes_per_elem):
    """KV 缓存写满时占多少字节：每层、每个词元、每份键值，存一个键和一个值，各 k 个数。

    陷阱：书的 memory_estimator_gqa.py 里 n_kv_groups 是"每组几个头"（32 个头、n_kv_groups = 4，得 8 份），
    而 GroupedQueryAttention 的 num_kv_groups 是"有几份"。同一个 4，一处省 4 倍，一处省 8 倍；这里一律传份数。

    参数:
        batch (int): 批大小
        context_length (int): 缓存里有几个词元
        emb_dim (int): 嵌入维度 d
        n_heads (int): 头数 h
        n_kv_heads (int): 键和值有几份 g；等于头数就是普通的多头注意力
        n_layers (int): 层数
        bytes_per_elem (int): 每个数几个字节，float32 是 4，bfloat16 是 2

    返回:
        int: 字节数
    """
    head_dim = -(-emb_dim // n_heads)  # 除不尽时向上取整，与书的估算器相同
    return batch * context_length * n_layers * n_kv_heads * head_dim * 2 * bytes_per_elem


class GroupedQueryAttention(nn.Module):
    """分组查询注意力（grouped-query attention）：h 个查询头分成 g 组，同组的头合用一份键和值。

    g = h 就是多头注意力（MHA），g = 1 是多查询注意力（MQA）；Llama 3 用 g = 8，h = 32。
    查询不存进缓存，所以只省键和值：缓存、W_key、W_value 都变成原来的 g / h。

    参数:
        d_in (int): 输入维度
        d_out (int): 输出维度，必须能被 num_heads 整除
        dropout (float): 注意力权重的丢弃率
        num_heads (int): 查询头数 h
        num_kv_groups (int): 键和值的份数 g，必须整除 h
        qkv_bias (bool): Q、K、V 的投影带不带偏置

    异常:
        ValueError: d_out 不能被 num_heads 整除，或 num_heads 不能被 num_kv_groups 整除

    出处: 原书仓库 ch04/04_gqa；Ainslie 等，GQA，2023
    """

    def __init__(self, d_in, d_out, dropout, num_heads, num_kv_groups, qkv_bias=False):
        super().__init__()
        if d_out % num_heads != 0:
            raise ValueError(f"d_out={d_out} 不能被 num_heads={num_heads} 整除，无法平均分给每个头")
        if num_kv_groups < 1 or num_heads % num_kv_groups != 0:
            raise ValueError(f"{num_heads} 个头不能平均分成 {num_kv_groups} 组")
        self.d_out, self.num_heads, self.num_kv_groups = d_out, num_heads, num_kv_groups
        self.head_dim = d_out // num_heads
        # 建立的次序与 MultiHeadAttention 相同：g = h 时，同一个种子得到同样的权重。
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, num_kv_groups * self.head_dim, bias=qkv_bias)  # 唯一的改变：窄了 h / g 倍
        self.W_value = nn.Linear(d_in, num_kv_groups * self.head_dim, bias=qkv_bias)
        self.out_proj = nn.Linear(d_out, d_out)  # 原书这里不带偏置；留着它，gpt.py 的权重才装得进来
        self.dropout = nn.Dropout(dropout)
        self.reset_cache()

    def reset_cache(self):
        """忘掉缓存，换一段话之前要调用。"""
        self.cache_k = self.cache_v = None

    def forward(self, x, use_cache=False):
        """前向传播。

        参数:
            x (Tensor): (b, t, d)
            use_cache (bool): 接着缓存里的词元往下算，并把新的键和值存进去

        返回:
            Tensor: (b, t, d_out)
        """
        b, t, _ = x.shape
        h, g, k = self.num_heads, self.num_kv_groups, self.head_dim
        queries = self.W_query(x).view(b, t, h, k).transpose(1, 2)  # (b, h, t, k)
        keys = self.W_key(x).view(b, t, g, k).transpose(1, 2)  # (b, g, t, k)
        values = self.W_value(x).view(b, t, g, k).transpose(1, 2)  # (b, g, t, k)
        if use_cache:
            if self.cache_k is not None:
                keys = torch.cat([self.cache_k, keys], dim=2)  # (b, g, s, k)
                values = torch.cat([self.cache_v, values], dim=2)  # (b, g, s, k)
            self.cache_k, self.cache_v = keys, values  # 存的是 g 份，不是 h 份
        s = keys.shape[2]

        # 同组的 h/g 个头问的是同一份键，就把它们的查询排成更多的行，一次乘完。书上用 repeat_interleave 把键复制成 h 份再乘，
        # 结果相同，却把省下的读写又花了回去（书上量到 GQA 每秒 63 个词元，MHA 反而有 72 个）。
        queries = queries.reshape(b, g, h // g * t, k)  # (b, g, h/g·t, k)　第 0…h/g−1 个头归第 0 组，依次类推
        scores = (queries @ keys.transpose(2, 3)).view(b, h, t, s)  # (b, h, t, s)
        # 因果掩码：新词元前面还有 s − t 个旧的，所以对角线右移 s − t。
        scores.masked_fill_(torch.ones(t, s, dtype=torch.bool, device=x.device).triu(s - t + 1), -torch.inf)
        weights = self.dropout(torch.softmax(scores / k**0.5, dim=-1))  # (b, h, t, s)
        context = weights.reshape(b, g, h // g * t, s) @ values  # (b, g, h/g·t, k)
        context = context.view(b, h, t, k).transpose(1, 2).reshape(b, t, self.d_out)  # (b, t, d_out)
        return self.out_proj(context)


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


# region 沿用 ch04/main: LayerNorm, GELU, FeedForward
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


# endregion


# region 改写 ch04/main: TransformerBlock, GPTModel
class TransformerBlock(nn.Module):
    """Transformer 块，注意力换成 GQA。（原版详解见 ch04/main/example_05_transformer_block.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.att = GroupedQueryAttention(  # 改：换成分组的；掩码现算，不要 context_length
            d_in=cfg["emb_dim"],
            d_out=cfg["emb_dim"],
            num_kv_groups=cfg["n_kv_groups"],  # 改：配置里多一个键，键和值有几份
            num_heads=cfg["n_heads"],
            dropout=cfg["drop_rate"],
            qkv_bias=cfg["qkv_bias"],
        )
        self.ff = FeedForward(cfg)
        self.norm1 = LayerNorm(cfg["emb_dim"])
        self.norm2 = LayerNorm(cfg["emb_dim"])
        self.drop_shortcut = nn.Dropout(cfg["drop_rate"])

    def forward(self, x, use_cache=False):  # 改：要不要用缓存，一路传下去
        shortcut = x
        x = self.norm1(x)
        x = self.att(x, use_cache)  # (b, t, d)　改：只有注意力有缓存
        x = self.drop_shortcut(x)
        x = x + shortcut
        shortcut = x
        x = self.norm2(x)
        x = self.ff(x)  # (b, t, d)
        x = self.drop_shortcut(x)
        return x + shortcut


class GPTModel(nn.Module):
    """GPT，注意力换成 GQA，可以带缓存。（原版详解见 ch04/main/example_06_gpt_model.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.Sequential(*[TransformerBlock(cfg) for _ in range(cfg["n_layers"])])
        self.final_norm = LayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)
        self.current_pos = 0  # 改：缓存里有几个词元，新词元的位置从它数起

    # 改：换一段话之前，每层的缓存和位置一起清零
    def reset_kv_cache(self):
        for block in self.trf_blocks:
            block.att.reset_cache()
        self.current_pos = 0

    def forward(self, in_idx, use_cache=False):  # 改：要不要用缓存
        t = in_idx.shape[1]
        start = self.current_pos if use_cache else 0  # 改：有缓存时，位置接着数
        if start + t > self.pos_emb.num_embeddings:  # 改：连缓存里的一起数
            raise ValueError(f"输入有 {start + t} 个词元，超过了模型的上下文长度 {self.pos_emb.num_embeddings}")  # 改：同上
        tok_embeds = self.tok_emb(in_idx)  # (b, t, d)
        pos_embeds = self.pos_emb(torch.arange(start, start + t, device=in_idx.device))  # (t, d)　改：从 start 数起
        self.current_pos = start + t if use_cache else self.current_pos  # 改：记下数到哪里了
        x = tok_embeds + pos_embeds  # (b, t, d)
        x = self.drop_emb(x)
        for block in self.trf_blocks:  # 改：要传第二个参数，nn.Sequential 只传一个，所以自己一块一块地调用
            x = block(x, use_cache)  # (b, t, d)
        x = self.final_norm(x)
        return self.out_head(x)  # (b, t, V)


# endregion


def generate_text_simple_cached(model, idx, max_new_tokens):
    """带着缓存的贪心解码：先送整个提示词，以后每步只送刚生成的那一个。

    参数:
        model (nn.Module): 带缓存的 GPT
        idx (Tensor): 提示词的词元编号，(b, t)；连同要生成的不能超过上下文长度
        max_new_tokens (int): 生成几个

    形状:
        输入 (b, t) → 输出 (b, t + max_new_tokens)

    返回:
        Tensor: 提示词连同新生成的词元
    """
    model.eval()
    model.reset_kv_cache()
    new = idx
    for _ in range(max_new_tokens):
        with torch.no_grad():
            logits = model(new, use_cache=True)[:, -1]  # (b, V)
        new = logits.argmax(dim=-1, keepdim=True)  # (b, 1)
        idx = torch.cat([idx, new], dim=1)  # (b, t + 1)
    return idx


def cache_error(model, ids):
    """缓存对不对：一个词元一个词元地带着缓存送进去，与一次送完相比，logits 最多差多少。

    不比生成的词元：两个词元的分数碰巧一样高时，末位的舍入就能让它们换了先后，那不算错。

    参数:
        model (nn.Module): 带缓存的 GPT；结束时，缓存里留着这些词元
        ids (Tensor): 词元编号，(b, t)

    返回:
        float: 最大的差，只应有舍入误差
    """
    model.eval()
    model.reset_kv_cache()
    with torch.no_grad():
        cached = torch.cat([model(token, use_cache=True) for token in ids.split(1, dim=1)], dim=1)  # (b, t, V)
        return (cached - model(ids)).abs().max().item()


def encode_characters(text):
    """按字符编号，前九成作训练集，后一成作验证集。

    字符当词元，词表只有几十个：模型可以很小，几秒钟就学到东西，几种结构的差别也看得见。

    参数:
        text (str): 训练用的文本

    返回:
        tuple[Tensor, Tensor, list]: 训练集和验证集的编号（都是一维），词表
    """
    chars = sorted(set(text))
    number = {char: i for i, char in enumerate(chars)}
    ids = torch.tensor([number[char] for char in text])
    return ids[: len(ids) * 9 // 10], ids[len(ids) * 9 // 10 :], chars


def validation_loss(model, ids, context_length):
    """整个验证集的平均损失：首尾相接地切成若干段，一批算完。

    参数:
        model (nn.Module): 语言模型，(b, t) → (b, t, V)
        ids (Tensor): 验证集的编号，一维
        context_length (int): 每段多长

    返回:
        float: 损失
    """
    model.eval()
    n = (len(ids) - 1) // context_length * context_length
    inputs, targets = ids[:n].view(-1, context_length), ids[1 : n + 1]  # (b, t)，(b·t,)
    with torch.no_grad():
        return nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets).item()


def train(model, train_ids, val_ids, context_length, steps, title, extra_loss=None):
    """训练一个小模型，记下验证损失的曲线。

    每个模型看到的批完全相同（另用一个种子固定的随机数发生器），差别就只来自结构和初始权重。

    参数:
        model (nn.Module): 语言模型
        train_ids (Tensor): 训练集的编号，一维
        val_ids (Tensor): 验证集的编号，一维
        context_length (int): 每个样本多长
        steps (int): 走几步
        title (str): 进度条上的名字
        extra_loss (callable 或 None): 前向之后再加的一项损失，没有就不加

    返回:
        list[tuple[int, float]]: 每项是步数和验证损失，第一项是训练之前
    """
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    curve = [(0, validation_loss(model, val_ids, context_length))]
    for step in tqdm(range(1, steps + 1), desc=title, unit="步", leave=False, disable=None):  # None：输出到文件时不画进度条
        model.train()
        starts = torch.randint(len(train_ids) - context_length, (16, 1), generator=generator)  # (b, 1)
        window = train_ids[starts + torch.arange(context_length + 1)]  # (b, t + 1)　多取一个，右移一位就是目标
        loss = nn.functional.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        if extra_loss is not None:
            loss = loss + extra_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % max(1, steps // 12) == 0 or step == steps:
            curve.append((step, validation_loss(model, val_ids, context_length)))
    return curve


def seed_noise(curve, other):
    """同样的结构只换初始权重的种子，验证损失会差多少：比这还小的差别，不能算在结构头上。

    参数:
        curve (list): train 的结果
        other (list): 换个种子的 train 的结果

    返回:
        float: 训练后半程里，两条曲线相距最远的一次；只看终点的话，可能碰巧相同
    """
    return max(abs(first[1] - second[1]) for first, second in list(zip(curve, other))[len(curve) // 2 :])


def decode_milliseconds(num_heads, num_kv_groups, length=4096, head_dim=64):
    """缓存里已有 length 个词元时，一层注意力再走一步要几毫秒：缓存越大，要读的越多。

    这里的缓存用 cat 拼接，每步还要申请新内存、抄一遍，所以差距可能比份数之比还悬殊。

    参数:
        num_heads (int): 头数
        num_kv_groups (int): 键和值的份数
        length (int): 缓存里有几个词元
        head_dim (int): 每个头的维度，取 GPT-2 的 64

    返回:
        float: 毫秒，取中位数
    """
    width = num_heads * head_dim
    attention = GroupedQueryAttention(width, width, 0.0, num_heads, num_kv_groups)
    x, seconds = torch.randn(1, 1, width), []
    cached = torch.randn(1, num_kv_groups, length, head_dim)
    with torch.no_grad():
        for _ in range(15):
            attention.cache_k = attention.cache_v = cached
            start = time.perf_counter()
            attention(x, use_cache=True)
            seconds.append(time.perf_counter() - start)
    return sorted(seconds)[len(seconds) // 2] * 1000


def draw(curves, noise, path):
    """左图：书中配置的缓存随份数的变化；右图：各种份数的验证损失曲线。

    参数:
        curves (dict): 份数 → train 的结果
        noise (float): seed_noise 的结果，画成灰带
        path (Path): 图片写到哪里
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.2), layout="constrained")
    copies = [32, 16, 8, 4, 2, 1]
    sizes = [calc_kv_bytes_total(1, 32768, 4096, 32, each, 32, 2) / 1e9 for each in copies]
    bars = left.bar([str(each) for each in copies], sizes, color=["tab:gray"] + ["tab:blue"] * 5)
    left.bar_label(bars, fmt="%.2f")
    left.set_xlabel("键和值有几份（头数是 32；32 份就是 MHA）")
    left.set_ylabel("写满 32768 个词元的 KV 缓存（GB）")
    for groups, curve in curves.items():
        right.plot(*zip(*curve), label=f"{groups} 份", linewidth=1.5)
    last = next(iter(curves.values()))[-1]
    right.axhspan(last[1] - noise, last[1] + noise, color="0.85", label="换个种子的差别")
    right.set_xlabel("训练步数")
    right.set_ylabel("验证损失")
    right.legend(title="键和值")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


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


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def main():
    """同一个小模型，只改键和值的份数，比缓存、参数、速度和损失。"""
    parser = argparse.ArgumentParser(description="实验　分组查询注意力：省多少缓存，亏多少损失")
    parser.add_argument("--heads", type=int, default=8, help="查询头数，必须整除 64（默认：8）")
    parser.add_argument("--groups", type=int, nargs="+", default=[4, 2, 1], help="键和值的份数，可以给几个，每个都要整除头数（默认：4 2 1）")
    parser.add_argument("--steps", type=int, default=400, help="每个模型训练几步（默认：400）")
    parser.add_argument("--seed", type=int, default=123, help="初始权重的随机种子（默认：123）")
    parser.add_argument("--quick", action="store_true", help="只训练 40 步，几秒钟走完全程")
    args = parser.parse_args()
    if not 1 <= args.steps <= 100000:
        parser.error(f"--steps 应在 1 到 100000 之间，不能是 {args.steps}")
    if not 1 <= args.heads <= 64:
        parser.error(f"--heads 应在 1 到 64 之间，不能是 {args.heads}")
    if not 0 <= args.seed < 2**62:
        parser.error(f"--seed 应是 0 到 2 的 62 次方之间的整数，不能是 {args.seed}")
    steps = min(args.steps, 40) if args.quick else args.steps
    copies = list(dict.fromkeys([args.heads, *args.groups]))  # 第一个总是 MHA，作参照
    path = find_data("the-verdict.txt", "story-en.txt")
    train_ids, val_ids, chars = encode_characters(path.read_text(encoding="utf-8"))
    cfg = {"vocab_size": len(chars), "context_length": 64, "emb_dim": 64, "n_heads": args.heads, "n_layers": 2, "drop_rate": 0.0, "qkv_bias": False}
    try:
        for each in copies:
            GPTModel(cfg | {"n_kv_groups": each})  # 分不成组的，开始训练之前就报错
    except ValueError as error:
        parser.error(str(error))
    print(f"数据　{path}　{len(train_ids) + len(val_ids):,} 个字符，{len(chars)} 种")
    print(f"模型　2 层，d = 64，{args.heads} 个查询头，上下文 64；每个训练 {steps} 步，键和值依次有 {copies} 份")

    results, curves, prompt = {}, {}, train_ids[None, :32]
    for each in copies:
        torch.manual_seed(args.seed)
        model = GPTModel(cfg | {"n_kv_groups": each})
        curves[each] = train(model, train_ids, val_ids, 64, steps, f"{each} 份")
        text = generate_text_simple_cached(model, prompt, 32)[0, 32:].tolist()
        error = cache_error(model, val_ids[None, :64])  # 写满了上下文，接着量真的缓存
        measured = sum(block.att.cache_k.nbytes + block.att.cache_v.nbytes for block in model.trf_blocks)
        results[each] = {
            "params": sum(p.numel() for p in model.trf_blocks[0].att.parameters()),
            "measured": measured,
            "formula": calc_kv_bytes_total(1, 64, 64, args.heads, each, 2, 4),
            "ms": decode_milliseconds(args.heads, each),
            "loss": curves[each][-1][1],
            "error": error,
            "text": "".join(chars[i] for i in text),
        }
    torch.manual_seed(args.seed + 1)
    other = train(GPTModel(cfg | {"n_kv_groups": args.heads}), train_ids, val_ids, 64, steps, "换个种子")
    base, noise = results[args.heads], seed_noise(curves[args.heads], other)

    print("\n键和值几份　每层注意力参数　写满的缓存　公式算的　4096 个词元后走一步　验证损失　比 MHA")
    for each, row in results.items():
        print(f"{each:6}{row['params']:18,}{row['measured']:13,} B{row['formula']:9,} B{row['ms']:16.2f} ms", end="")
        print(f"{row['loss']:13.3f}{row['loss'] - base['loss']:+9.3f}")
    print(f"{args.heads:6}　（换个种子）{other[-1][1]:64.3f}{other[-1][1] - base['loss']:+9.3f}")
    least = min(results)
    print(f"{least} 份键和值的模型接着写 32 个字符：{results[least]['text']!r}")

    mha, gqa = (calc_kv_bytes_total(1, 32768, 4096, 32, each, 32, 2) / 1e9 for each in (32, 8))
    print(f"\n放大到书中的配置（32 层，d = 4096，32 个头，32768 个词元，bfloat16）：MHA {mha:.2f} GB，8 份 {gqa:.2f} GB，省 {1 - gqa / mha:.0%}")
    draw(curves, noise, OUTPUTS / "gqa.png")
    print(f"图片已写到 {OUTPUTS / 'gqa.png'}")

    print("\n所以（都是这一次量的）：")
    for each, row in list(results.items())[1:]:
        gap = row["loss"] - base["loss"]
        verdict = "没有超过" if abs(gap) <= noise else f"{'差' if gap > 0 else '好'}得超过了"
        cache, step, params = (row[key] / base[key] for key in ("measured", "ms", "params"))
        print(f"  {each} 份：缓存是 MHA 的 {cache:.3g} 倍，走一步的时间 {step:.2f} 倍，注意力的参数还剩 {params:.0%}；")
        print(f"        验证损失 {gap:+.3f}，{verdict}换个种子的差别（{noise:.3f}）。")

    print("\n这个数字对吗？")
    torch.manual_seed(args.seed)
    plain = MultiHeadAttention(64, 64, 64, 0.0, args.heads)
    torch.manual_seed(args.seed)
    grouped = GroupedQueryAttention(64, 64, 0.0, args.heads, args.heads)
    x = torch.randn(2, 16, 64)  # (b, t, d)
    confirm("份数等于头数时，与第 3 章的 MultiHeadAttention 输出相同", torch.allclose(plain(x), grouped(x), atol=1e-6), "建各层的次序变了，或者掩码错了")
    groups = min(results)
    grouped = GroupedQueryAttention(64, 64, 0.0, args.heads, groups)
    copied = MultiHeadAttention(64, 64, 64, 0.0, args.heads)
    rows = torch.arange(groups * grouped.head_dim).view(groups, -1).repeat_interleave(args.heads // groups, dim=0).flatten()  # (d,)
    copied.load_state_dict(grouped.state_dict() | {"W_key.weight": grouped.W_key.weight[rows], "W_value.weight": grouped.W_value.weight[rows]}, strict=False)
    confirm(f"{groups} 份的 GQA，等于把键和值的权重复制给同组各头的 MHA", torch.allclose(copied(x), grouped(x), atol=1e-6), "头认错了组：要的是 [1, 1, 2, 2]，不是 [1, 2, 1, 2]")
    confirm("实测的缓存与公式一个字节不差", all(row["measured"] == row["formula"] for row in results.values()), "存的是复制之后的 h 份，那就一点没省")
    confirm("有缓存与没有缓存，logits 相同（最多差千分之一）", all(row["error"] < 1e-3 for row in results.values()), "位置没有接着数，或掩码没有右移")
    confirm(f"书中的配置：{mha:.2f} GB 和 {gqa:.2f} GB，与原书仓库的 17.18 和 4.29 相同", (f"{mha:.2f}", f"{gqa:.2f}") == ("17.18", "4.29"), "忘了乘 2（键和值各一），或把 n_kv_groups 当成了份数")
    start, guess = curves[args.heads][0][1], torch.tensor(len(chars)).log().item()
    confirm(f"没训练时损失 {start:.2f} 接近 ln {len(chars)} = {guess:.2f}", abs(start - guess) < 0.6, "初始权重太大")


if __name__ == "__main__":
    main()
