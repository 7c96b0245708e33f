"""第 4 章 · 实验　混合专家（MoE）：八个前馈网络轮流上班，路由会不会只偏爱其中两个？

问题：　把前馈网络换成 8 个小的（专家），每个词元只用其中 2 个：参数是原来的几倍，算得却一样多。8 个专家都有活干吗？
先猜：　不加干预，最忙的专家会比平均忙几倍？加一项均衡损失之后呢？（先想 10 秒，再运行）
看点：　① 图的下面两幅：不加均衡损失，有的专家几乎没有活，参数白占着内存；加了，颜色就匀了；
        ② 上图：计算量相同时，MoE 与密集的前馈网络谁的损失低；③ 打印的「各专家偏爱的字符」：没有人教，它们自己分了工。
动手改：1. --balance 1：均衡得几乎平均；再看损失有没有变差。
        2. --experts 1 --top-k 1：就是普通的前馈网络，自查里证明了它们相同。
        3. 把 forward 里的 probs[chosen] 乘法去掉（专家的输出不按概率加权）：程序照样跑，「MoE 一个专家」仍相同，
           「按定义逐个词元算」变成 ✗；没有均衡损失的那个，路由再也收不到梯度。

运行：
    python ch04/experiments/exp_moe.py               # 图片写到 ch04/outputs/
    python ch04/experiments/exp_moe.py --quick
    约 60 秒，0.5 GB（2 核 CPU，只用 1 核）

形状记号：b 批大小　t 序列长度　n = b·t 词元总数　d 嵌入维度　e 专家总数　j 每个词元用几个专家　m 分到某个专家的词元数
　　　　　u 训练了几步　l 层数　V 词表大小
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


def estimate_params_and_hidden(emb_dim, hidden_dim, num_experts, top_k, match_dense=False):
    """一层 MoE 有多少参数，其中一个词元用得到的有多少。

    参数:
        emb_dim (int): 嵌入维度 d
        hidden_dim (int): 密集前馈网络的中间维度
        num_experts (int): 专家总数 e
        top_k (int): 每个词元用几个
        match_dense (bool): True 时把每个专家缩小，让 MoE 的总参数约等于密集的；False 时每个专家与密集的一样大

    返回:
        dict[str, int]: dense_params、per_expert_params、router、moe_total、active（一个词元用得到的）、moe_hidden_dim
    """
    dense, router = 3 * emb_dim * hidden_dim, emb_dim * num_experts  # SwiGLU 有三个矩阵：fc1、fc2、fc3
    moe_hidden = round((dense - router) / (num_experts * 3 * emb_dim)) if match_dense else hidden_dim
    expert = 3 * emb_dim * moe_hidden
    total, active = num_experts * expert + router, top_k * expert + router
    return {"dense_params": dense, "per_expert_params": expert, "router": router, "moe_total": total, "active": active, "moe_hidden_dim": moe_hidden}


class FeedForward(nn.Module):
    """SwiGLU 前馈网络：中间那一层分成两路，一路过 SiLU 当闸门，乘在另一路上。

    与 gpt.py 的前馈网络同名不同形（那里是两个矩阵加 GELU），因为原书的 MoE 和如今的大模型都用这一种。

    参数:
        cfg (dict): 模型配置，用到 emb_dim 和 hidden_dim

    形状:
        输入 (…, d) → 输出 (…, d)

    出处: 原书仓库 ch04/07_moe；Shazeer，GLU Variants Improve Transformer，2020
    """

    def __init__(self, cfg):
        super().__init__()
        self.fc1 = nn.Linear(cfg["emb_dim"], cfg["hidden_dim"], bias=False)
        self.fc2 = nn.Linear(cfg["emb_dim"], cfg["hidden_dim"], bias=False)
        self.fc3 = nn.Linear(cfg["hidden_dim"], cfg["emb_dim"], bias=False)

    def forward(self, x):
        """前向传播：fc3(SiLU(fc1(x)) · fc2(x))。

        参数:
            x (Tensor): (…, d)

        返回:
            Tensor: (…, d)
        """
        return self.fc3(nn.functional.silu(self.fc1(x)) * self.fc2(x))


class MoEFeedForward(nn.Module):
    """混合专家（mixture of experts）：路由给每个词元挑 j 个专家，只算这几个，按概率加起来。

    参数:
        cfg (dict): 模型配置，用到 emb_dim、hidden_dim（每个专家的中间维度）、num_experts、num_experts_per_tok

    形状:
        输入 (b, t, d) → 输出 (b, t, d)

    异常:
        ValueError: num_experts_per_tok 不在 1 到 num_experts 之间

    出处: 原书仓库 ch04/07_moe；Fedus 等，Switch Transformer，2021（均衡损失）
    """

    def __init__(self, cfg):
        super().__init__()
        self.num_experts, self.num_experts_per_tok = cfg["num_experts"], cfg["num_experts_per_tok"]
        if not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise ValueError(f"一共 {self.num_experts} 个专家，每个词元不能用 {self.num_experts_per_tok} 个")
        emb_dim, hidden_dim = cfg["emb_dim"], cfg["hidden_dim"]
        self.gate = nn.Linear(emb_dim, self.num_experts, bias=False)  # 路由（router）：给每个专家打一分
        self.fc1 = nn.ModuleList([nn.Linear(emb_dim, hidden_dim, bias=False) for _ in range(self.num_experts)])
        self.fc2 = nn.ModuleList([nn.Linear(emb_dim, hidden_dim, bias=False) for _ in range(self.num_experts)])
        self.fc3 = nn.ModuleList([nn.Linear(hidden_dim, emb_dim, bias=False) for _ in range(self.num_experts)])
        self.load = self.balance_loss = self.last_choice = None  # 最近一次前向的统计，给均衡损失和画图用

    def forward(self, x):
        """前向传播。

        参数:
            x (Tensor): (b, t, d)

        返回:
            Tensor: (b, t, d)
        """
        flat = x.flatten(0, 1)  # (n, d)　路由只看词元自己，不分样本
        scores = self.gate(flat)  # (n, e)
        top_scores, top_experts = scores.topk(self.num_experts_per_tok, dim=-1)  # (n, j)，(n, j)
        probs = torch.softmax(top_scores, dim=-1)  # (n, j)　只在选中的几个之间分，加起来是 1
        out = torch.zeros_like(flat)  # (n, d)
        for expert in range(self.num_experts):
            chosen = top_experts == expert  # (n, j)
            rows = chosen.any(dim=-1).nonzero().flatten()  # (m,)　哪些词元归它
            if len(rows) == 0:
                continue  # 没有词元选它：不算，也就没有梯度，这正是"饿死"的开始
            inputs = flat[rows]  # (m, d)
            hidden = nn.functional.silu(self.fc1[expert](inputs)) * self.fc2[expert](inputs)  # (m, hidden)
            # 乘概率不只是加权：topk 选谁不可导，路由的梯度全靠这一乘传回去。
            out = out.index_add(0, rows, self.fc3[expert](hidden) * probs[chosen][:, None])  # (n, d)

        # 均衡损失（load balancing loss）：e · Σ 活的占比 · 平均概率。占比不可导，概率可导：忙的专家，概率被往下压。
        # 完全平均时是 1；全挤在一个专家上时接近 e。
        self.load = torch.bincount(top_experts.flatten(), minlength=self.num_experts) / top_experts.numel()  # (e,)
        self.balance_loss = self.num_experts * (self.load * torch.softmax(scores, dim=-1).mean(dim=0)).sum()
        self.last_choice = top_experts.detach()
        return out.view_as(x)  # (b, t, d)


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


# region 沿用 ch04/main: LayerNorm
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


# endregion


# region 改写 ch04/main: TransformerBlock
class TransformerBlock(nn.Module):
    """Transformer 块，前馈网络可以换成 MoE。（原版详解见 ch04/main/example_05_transformer_block.py）"""

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
        self.ff = MoEFeedForward(cfg) if cfg["num_experts"] > 0 else FeedForward(cfg)  # 改：专家数是 0 就用密集的，与原书同
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


# endregion


# region 沿用 ch04/main: GPTModel
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


# region 沿用 ch04/experiments/exp_gqa.py: encode_characters, validation_loss, train, seed_noise
def encode_characters(text):
    """按字符编号，前九成作训练集，后一成作验证集。（详解见 ch04/experiments/exp_gqa.py）"""
    chars = sorted(set(text))
    number = {char: i for i, char in enumerate(chars)}
    ids = torch.tensor([number[char] for char in text])
    return ids[: len(ids) * 9 // 10], ids[len(ids) * 9 // 10 :], chars


def validation_loss(model, ids, context_length):
    """整个验证集的平均损失：首尾相接地切成若干段，一批算完。（详解见 ch04/experiments/exp_gqa.py）"""
    model.eval()
    n = (len(ids) - 1) // context_length * context_length
    inputs, targets = ids[:n].view(-1, context_length), ids[1 : n + 1]  # (b, t)，(b·t,)
    with torch.no_grad():
        return nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets).item()


def train(model, train_ids, val_ids, context_length, steps, title, extra_loss=None):
    """训练一个小模型，记下验证损失的曲线。（详解见 ch04/experiments/exp_gqa.py）"""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    curve = [(0, validation_loss(model, val_ids, context_length))]
    for step in tqdm(range(1, steps + 1), desc=title, unit="步", leave=False, disable=None):
        model.train()
        starts = torch.randint(len(train_ids) - context_length, (16, 1), generator=generator)  # (b, 1)
        window = train_ids[starts + torch.arange(context_length + 1)]  # (b, t + 1)
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
    """同样的结构只换初始权重的种子，验证损失会差多少：比这还小的差别，不能算在结构头上。（详解见 ch04/experiments/exp_gqa.py）"""
    return max(abs(first[1] - second[1]) for first, second in list(zip(curve, other))[len(curve) // 2 :])


# endregion


def train_moe(model, train_ids, val_ids, context_length, steps, balance, title):
    """训练一个 MoE 模型，顺便记下每一步、每一层、每个专家分到多少活。

    参数:
        model (nn.Module): 每块的前馈网络都是 MoE 的 GPT
        train_ids (Tensor): 训练集的编号，一维
        val_ids (Tensor): 验证集的编号，一维
        context_length (int): 每个样本多长
        steps (int): 走几步
        balance (float): 均衡损失的权重，0 表示不加
        title (str): 进度条上的名字

    返回:
        tuple[list, Tensor]: 验证损失的曲线；负载，(u, l, e)，每层加起来是 1
    """
    loads = []

    def extra_loss():
        loads.append(torch.stack([block.ff.load for block in model.trf_blocks]))  # (l, e)
        return balance * sum(block.ff.balance_loss for block in model.trf_blocks)

    curve = train(model, train_ids, val_ids, context_length, steps, title, extra_loss)
    return curve, torch.stack(loads)  # (u, l, e)


def one_by_one(moe, x):
    """MoE 的另一种算法，完全照定义：一个词元一个词元地，把它的几个专家各算一遍再加起来。慢，只用来对答案。

    参数:
        moe (MoEFeedForward): 混合专家
        x (Tensor): (b, t, d)

    返回:
        Tensor: (b, t, d)
    """
    rows = []
    for token in x.flatten(0, 1):
        scores = moe.gate(token)  # (e,)
        experts = scores.argsort(descending=True)[: moe.num_experts_per_tok].tolist()
        shares = torch.softmax(scores[experts], dim=0)  # (j,)
        rows.append(sum(share * moe.fc3[i](nn.functional.silu(moe.fc1[i](token)) * moe.fc2[i](token)) for share, i in zip(shares, experts)))
    return torch.stack(rows).view_as(x)  # (b, t, d)


def favourites(model, ids, chars):
    """最后一层的每个专家，最偏爱哪几个字符：在它那里的占比，比在全文里的占比高几倍。

    参数:
        model (nn.Module): MoE 模型
        ids (Tensor): 词元编号，(b, t)
        chars (list[str]): 词表

    返回:
        list[str]: 每个专家一项，最偏爱的五个字符
    """
    model.eval()
    with torch.no_grad():
        model(ids)
    choice, tokens = model.trf_blocks[-1].ff.last_choice, ids.flatten()  # (n, j)，(n,)
    everywhere = torch.bincount(tokens, minlength=len(chars)).float()  # (V,)
    result = []
    for expert in range(model.trf_blocks[-1].ff.num_experts):
        here = torch.bincount(tokens[(choice == expert).any(dim=-1)], minlength=len(chars))  # (V,)
        ratio = torch.where(everywhere >= 10, here / everywhere.clamp(min=1), 0)  # (V,)　太少见的字符不算，免得碰巧
        result.append(" ".join(repr(chars[i])[1:-1].replace(" ", "空格") for i in ratio.topk(5).indices if ratio[i] > 0))
    return result


def milliseconds(layer, x):
    """一层前馈网络，前向一次要几毫秒。

    参数:
        layer (nn.Module): 前馈网络或 MoE
        x (Tensor): (b, t, d)

    返回:
        float: 毫秒，取中位数
    """
    seconds = []
    with torch.no_grad():
        for _ in range(15):
            start = time.perf_counter()
            layer(x)
            seconds.append(time.perf_counter() - start)
    return sorted(seconds)[len(seconds) // 2] * 1000


def draw(curves, loads, noise, path):
    """三幅图：训练曲线；不加和加了均衡损失时，最后一层每个专家的负载随训练的变化。

    参数:
        curves (dict): 名字 → train 的结果；第一条是参照
        loads (dict): 同样的键 → 负载，(u, l, e)
        noise (float): seed_noise 的结果，画成灰带
        path (Path): 图片写到哪里
    """
    figure, axes = plt.subplot_mosaic([["loss", "loss"], ["plain", "balanced"]], figsize=(9.6, 7.6), layout="constrained")
    for name, curve in curves.items():
        axes["loss"].plot(*zip(*curve), label=name, linewidth=1.5)
    last = next(iter(curves.values()))[-1][1]
    axes["loss"].axhspan(last - noise, last + noise, color="0.85", label="换个种子的差别")
    axes["loss"].set_ylabel("验证损失")
    axes["loss"].legend()
    heat = [axes["plain"], axes["balanced"]]
    for axis, (name, load) in zip(heat, loads.items()):
        experts = load.shape[-1]
        # 每个专家一行；extent 让横轴是步数，纵轴从上到下是第 1 到第 e 个专家。
        extent = [0, len(load), experts + 0.5, 0.5]
        image = axis.imshow((load[:, -1].T * experts).numpy(), aspect="auto", vmin=0, vmax=3, interpolation="nearest", extent=extent)
        axis.set_title(name)
        axis.set_yticks(range(1, experts + 1, -(-experts // 16)))
    heat[0].set_ylabel("最后一层的专家")
    for axis in axes.values():
        axis.set_xlabel("训练步数")
    figure.colorbar(image, ax=heat, label="负载是平均的几倍（1 最匀）", extend="max")
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
    """同一个小模型，只换前馈网络：密集的、同样计算量的 MoE、加了均衡损失的 MoE，比损失和负载。"""
    parser = argparse.ArgumentParser(description="实验　混合专家：路由会不会偏心")
    parser.add_argument("--experts", type=int, default=8, help="专家总数（默认：8）")
    parser.add_argument("--top-k", type=int, default=2, help="每个词元用几个专家，不能超过总数（默认：2）")
    parser.add_argument("--balance", type=float, default=0.01, help="均衡损失的权重（默认：0.01，与 Switch Transformer 相同）")
    parser.add_argument("--steps", type=int, default=300, help="每个模型训练几步（默认：300）")
    parser.add_argument("--seed", type=int, default=123, help="初始权重的随机种子（默认：123）")
    parser.add_argument("--quick", action="store_true", help="只训练 30 步，几秒钟走完全程")
    args = parser.parse_args()
    for name, low, high in [("experts", 1, 64), ("top_k", 1, args.experts), ("balance", 0, 100), ("steps", 1, 100000), ("seed", 0, 2**62)]:
        if not low <= getattr(args, name) <= high:
            parser.error(f"--{name.replace('_', '-')} 应在 {low} 到 {high} 之间，不能是 {getattr(args, name)}")
    experts, top_k, context, d, hidden = args.experts, args.top_k, 64, 64, 64
    steps = min(args.steps, 30) if args.quick else args.steps
    path = find_data("the-verdict.txt", "story-en.txt")
    train_ids, val_ids, chars = encode_characters(path.read_text(encoding="utf-8"))
    torch.set_num_threads(1)  # 矩阵都很小，两个线程也只快三成；别的程序占着核时，线程互相等，反而慢好几倍
    print(f"数据　{path}　{len(train_ids) + len(val_ids):,} 个字符，{len(chars)} 种")
    print(f"模型　2 层，d = {d}，8 个头，上下文 {context}；{experts} 个专家，每个中间 {hidden} 维，每个词元用 {top_k} 个；每个训练 {steps} 步")
    cfg = {"vocab_size": len(chars), "context_length": context, "emb_dim": d, "n_heads": 8, "n_layers": 2, "drop_rate": 0.0, "qkv_bias": False}
    cfg |= {"num_experts": experts, "num_experts_per_tok": top_k, "hidden_dim": hidden}

    small, large, plain, balanced = "密集，计算量相同", "密集，参数量相同", "MoE，不加均衡损失", "MoE，加均衡损失"
    settings = {small: {"num_experts": 0, "hidden_dim": hidden * top_k}, large: {"num_experts": 0, "hidden_dim": hidden * experts}, plain: {}, balanced: {}}
    models, curves, loads = {}, {}, {}
    for name, change in settings.items():
        torch.manual_seed(args.seed)
        models[name] = GPTModel(cfg | change)
        if name in (plain, balanced):
            curves[name], loads[name] = train_moe(models[name], train_ids, val_ids, context, steps, args.balance if name == balanced else 0.0, name)
        else:
            curves[name] = train(models[name], train_ids, val_ids, context, steps, name)
    torch.manual_seed(args.seed + 1)
    other = train(GPTModel(cfg | settings[small]), train_ids, val_ids, context, steps, "换个种子")
    noise = seed_noise(curves[small], other)

    estimate = estimate_params_and_hidden(d, hidden, experts, top_k)
    print("\n前馈网络　　　　　　每层参数　一个词元用到　占内存　　一层前向　验证损失　最忙的专家是平均的几倍　最闲的")
    x, table = torch.randn(16, context, d), {}
    for name, model in models.items():
        layer = model.trf_blocks[0].ff
        count = sum(p.numel() for p in layer.parameters())
        active = estimate["active"] if name in loads else count
        table[name], worst = [count, active, milliseconds(layer, x), curves[name][-1][1]], ""
        if name in loads:
            load = loads[name][-max(1, steps // 5) :].mean(dim=0) * experts  # (l, e)　最后五分之一的平均，1 就是正好平均
            table[name].append(load)
            worst = f"{load.max():17.2f}{load.min():17.2f}"
        size = sum(p.nbytes for p in layer.parameters()) / 1024
        print(f"{name.ljust(9, '　')}{count:9,}{active:12,}{size:10.0f} KB{table[name][2]:9.2f} ms{table[name][3]:10.3f}{worst}")
    print(f"换个种子的「{small}」，验证损失 {other[-1][1]:.3f}；训练后半程里两个种子最多差 {noise:.3f}")
    print("最后一层各专家偏爱的字符（加均衡损失的那个模型）：")
    for expert, text in enumerate(favourites(models[balanced], train_ids[: 64 * 128].view(-1, context), chars), start=1):
        print(f"  专家 {expert}　{text}")

    book = estimate_params_and_hidden(7168, 14336, 8, 2, match_dense=True)
    print("\n书中的配置（d = 7168，中间 14336 维，8 个专家用 2 个，总参数与密集的相当，bfloat16）：")
    print(f"  密集 {book['dense_params']:,} 个（{book['dense_params'] * 2 / 1e9:.2f} GB）；", end="")
    print(f"每个专家中间 {book['moe_hidden_dim']} 维，{book['per_expert_params']:,} 个；路由 {book['router']:,} 个")
    print(f"  MoE 共 {book['moe_total']:,} 个（{book['moe_total'] * 2 / 1e9:.2f} GB），一个词元用到 {book['active']:,} 个（{book['active'] * 2 / 1e9:.2f} GB）")
    draw(curves, loads, noise, OUTPUTS / "moe.png")
    print(f"图片已写到 {OUTPUTS / 'moe.png'}")

    print("\n所以（都是这一次量的）：")
    print(f"  MoE 的参数是「{small}」的 {table[plain][0] / table[small][0]:.1f} 倍，一个词元用到的是它的 {table[plain][1] / table[small][1]:.2f} 倍（多出来的是路由）。")
    print(f"  但一层前向的时间是它的 {table[plain][2] / table[small][2]:.1f} 倍：挑词元、算 {experts} 次小的、放回去，都要时间；参数量相同的密集网络是 {table[large][2] / table[small][2]:.1f} 倍。")
    for name in (large, plain, balanced):
        gap = table[name][3] - table[small][3]
        verdict = "没有超过" if abs(gap) <= noise else f"{'差' if gap > 0 else '好'}得超过了"
        print(f"  {name}：验证损失 {gap:+.3f}，{verdict}换个种子的差别（{noise:.3f}）。")
    if table[balanced][3] - table[small][3] > noise:
        print(f"  MoE 没有占到便宜，多半因为每个专家平均只见到 {top_k / experts:.0%} 的词元，故事又短：参数多，要更多的数据才喂得饱。")
    before, after = table[plain][4], table[balanced][4]
    print(f"  最忙的专家是平均的 {before.max():.2f} 倍，加了均衡损失是 {after.max():.2f} 倍；最闲的从 {before.min():.2f} 变成 {after.min():.2f}。")

    print("\n这个数字对吗？")
    single = MoEFeedForward(cfg | {"num_experts": 1, "num_experts_per_tok": 1})
    dense = FeedForward(cfg)
    dense.load_state_dict({key.replace(".0.", "."): value for key, value in single.state_dict().items() if key != "gate.weight"})
    confirm("MoE 一个专家，与普通的前馈网络输出相同", torch.allclose(single(x), dense(x), atol=1e-6), "概率没有在选中的几个之间归一")
    moe, piece = models[plain].trf_blocks[0].ff, x[:2, :8]
    confirm("成批地算，与按定义逐个词元算相同", torch.allclose(moe(piece), one_by_one(moe, piece), atol=1e-5), "概率与专家没有对上号，或没有乘概率")
    confirm(f"参数的估算与数出来的相同：{estimate['moe_total']:,} 个", estimate["moe_total"] == table[plain][0], "漏了路由，或 SwiGLU 少数了一个矩阵")
    sums = torch.cat([load.sum(dim=-1).flatten() for load in loads.values()])  # (2·u·l,)
    confirm("每一步、每一层的负载加起来都是 1", torch.allclose(sums, torch.ones_like(sums)), "没有除以 词元数 × j")
    confirm(
        "书中的配置：308,281,344、38,535,168、57,344、308,338,688、77,127,680，1792 维，与原书仓库相同",
        list(book.values()) == [308281344, 38535168, 57344, 308338688, 77127680, 1792],
        "SwiGLU 少数了一个矩阵，或缩小之后的维度没有四舍五入",
    )


if __name__ == "__main__":
    main()
