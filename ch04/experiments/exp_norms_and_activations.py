"""第 4 章 · 实验　换一种归一化、换一个位置、换一个激活函数，会怎样？

问题：　LayerNorm 换成 RMSNorm，归一化从前面挪到后面，GELU 换成 ReLU 或 SwiGLU：验证损失差多少？
先猜：　哪一样换了会真的不同，哪几样其实差不多？（先想 10 秒，再运行）
看点：　① 先量误差：同样的配置只换种子，验证损失就会差一点；比这还小的差别，都不能说谁好；
        ② 左图：归一化的种类和位置；右图：激活函数；③ 参数几乎一样多（SwiGLU 有三个矩阵，所以中间只升到 8/3 倍，而不是 4 倍）。
动手改：1. --layers 4：浅的时候，后置、不归一化的都不差，与第一行差得不比换个种子多：归一化是为了叠得深。
        2. --lr 0.0003：学习率小十倍，后置就追上来了；所以最初的 Transformer（后置）离不开学习率预热。
        3. 把 RMSNorm 里的 x.pow(2).mean(…) 换成 x.var(…)：减不减均值，训练出来几乎一样，这正是 RMSNorm 敢省掉它的原因（自查会有一条 ✗）。

运行：
    python ch04/experiments/exp_norms_and_activations.py            # 图片写到 ch04/outputs/
    python ch04/experiments/exp_norms_and_activations.py --quick
    约 79 秒，0.8 GB（2 核 CPU）

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　k 每个头的维度　V 词表大小（这里词元就是字符）　n 样本数
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
# 每一种都从第一种改一样东西：归一化、它的位置、激活函数。
RECIPES = {
    "LayerNorm pre GELU": {"norm": "LayerNorm", "place": "pre", "activation": "GELU"},
    "RMSNorm": {"norm": "RMSNorm", "place": "pre", "activation": "GELU"},
    "不归一化": {"norm": "none", "place": "pre", "activation": "GELU"},
    "post（后置）": {"norm": "LayerNorm", "place": "post", "activation": "GELU"},
    "ReLU": {"norm": "LayerNorm", "place": "pre", "activation": "ReLU"},
    "SwiGLU": {"norm": "LayerNorm", "place": "pre", "activation": "SwiGLU"},
}
BASE = "LayerNorm pre GELU"
T, BATCH = 64, 16


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


# region 沿用 ch04/main: LayerNorm, GELU
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


# endregion


class RMSNorm(nn.Module):
    """均方根归一化：x ÷ √mean(x²) × scale。不减均值，也没有 shift，少算一半；Llama、Qwen 都用它。

    参数:
        emb_dim (int): 嵌入维度 d

    形状:
        输入 (b, t, d) → 输出 (b, t, d)

    出处: Zhang、Sennrich，Root Mean Square Layer Normalization，2019
    """

    def __init__(self, emb_dim):
        super().__init__()
        self.eps = 1e-5
        self.scale = nn.Parameter(torch.ones(emb_dim))

    def forward(self, x):
        """前向传播。

        参数:
            x (Tensor): (b, t, d)

        返回:
            Tensor: (b, t, d)
        """
        return self.scale * x / torch.sqrt(x.pow(2).mean(dim=-1, keepdim=True) + self.eps)


class SwiGLU(nn.Module):
    """带门的前馈网络：一个矩阵算内容，一个矩阵算门，逐个相乘，再由第三个矩阵降回来。

    门 silu(x) = x · sigmoid(x)，由输入自己决定每一维放行多少。三个矩阵，所以中间宽度取 8d/3，参数才与 4d 的两个矩阵一样多。

    参数:
        emb_dim (int): 嵌入维度 d

    形状:
        输入 (b, t, d) → 输出 (b, t, d)

    出处: Shazeer，GLU Variants Improve Transformer，2020
    """

    def __init__(self, emb_dim):
        super().__init__()
        hidden = round(8 * emb_dim / 3)
        self.fc1 = nn.Linear(emb_dim, hidden)
        self.fc2 = nn.Linear(emb_dim, hidden)
        self.fc3 = nn.Linear(hidden, emb_dim)

    def forward(self, x):
        """前向传播。

        参数:
            x (Tensor): (b, t, d)

        返回:
            Tensor: (b, t, d)
        """
        return self.fc3(nn.functional.silu(self.fc1(x)) * self.fc2(x))


def make_norm(cfg):
    """按配置建一个归一化。

    参数:
        cfg (dict): 模型配置，用到 norm 和 emb_dim

    返回:
        nn.Module: LayerNorm、RMSNorm，或什么也不做
    """
    return {"LayerNorm": LayerNorm, "RMSNorm": RMSNorm, "none": lambda _: nn.Identity()}[cfg["norm"]](cfg["emb_dim"])


# region 改写 ch04/main: FeedForward, TransformerBlock, GPTModel
class FeedForward(nn.Module):
    """前馈网络，激活函数可选。（原版详解见 ch04/main/example_03_feedforward.py）"""

    def __init__(self, cfg):
        super().__init__()
        if cfg["activation"] == "SwiGLU":  # 改：SwiGLU 结构不同，单独一个类
            self.layers = SwiGLU(cfg["emb_dim"])
            return
        self.layers = nn.Sequential(
            nn.Linear(cfg["emb_dim"], 4 * cfg["emb_dim"]),
            nn.ReLU() if cfg["activation"] == "ReLU" else GELU(),  # 改：原来总是 GELU
            nn.Linear(4 * cfg["emb_dim"], cfg["emb_dim"]),
        )

    def forward(self, x):
        return self.layers(x)


class TransformerBlock(nn.Module):
    """Transformer 块，归一化的种类和位置可选。（原版详解见 ch04/main/example_05_transformer_block.py）"""

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
        self.place = cfg["place"]  # 改：pre 在每一层之前，post 在加完残差之后
        self.norm1 = make_norm(cfg)  # 改：原来是 LayerNorm
        self.norm2 = make_norm(cfg)  # 改：同上
        self.drop_shortcut = nn.Dropout(cfg["drop_rate"])

    def forward(self, x):
        if self.place == "post":  # 改：2017 年的原始写法：归一化压在残差这条主路上，梯度每过一层都要穿过它
            x = self.norm1(x + self.drop_shortcut(self.att(x)))  # (b, t, d)
            return self.norm2(x + self.drop_shortcut(self.ff(x)))  # (b, t, d)
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
    """GPT，最后的归一化跟着配置走。（原版详解见 ch04/main/example_06_gpt_model.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.Sequential(*[TransformerBlock(cfg) for _ in range(cfg["n_layers"])])
        # 改：post 的最后一步已经是归一化，不用再来一次
        self.final_norm = nn.Identity() if cfg["place"] == "post" else make_norm(cfg)
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


def train(config, ids, held_out, steps, lr, seed, name):
    """训练一个，每 20 步看一次验证损失。

    参数:
        config (dict): 模型配置
        ids (Tensor): 训练文本的字符编号，一维
        held_out (Tensor): 验证片段，(n, t + 1)
        steps (int): 几步
        lr (float): 学习率，不预热、不衰减，好看出谁更娇气
        seed (int): 随机种子，决定初始权重和训练片段
        name (str): 进度条上的名字

    返回:
        tuple[GPTModel, list[float], float]: 模型、每次的验证损失、每一步几毫秒
    """
    torch.manual_seed(seed)
    model = GPTModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1)
    torch.manual_seed(seed)  # 参数的个数不同，用掉的随机数也不同；重设一次，训练片段才相同
    windows, losses, spent = ids.unfold(0, T + 1, 1), [], 0.0  # (m, t + 1)　m 个起点，每个一段
    for step in tqdm(range(steps), desc=name, ncols=80, unit="步", leave=False, disable=None):
        start = time.perf_counter()
        batch = windows[torch.randint(len(windows), (BATCH,))]  # (b, t + 1)
        loss = nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        spent += time.perf_counter() - start
        if step % 20 == 19:
            with torch.no_grad():
                losses.append(nn.functional.cross_entropy(model(held_out[:, :-1]).flatten(0, 1), held_out[:, 1:].flatten()).item())
    return model, losses, spent / steps * 1000


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


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def draw(curves, noise, path):
    """两格验证损失：左边比归一化，右边比激活函数；灰带是只换种子的误差。

    参数:
        curves (dict[str, list[float]]): 名字 → 每 20 步的验证损失
        noise (float): 只换种子，损失最多差多少
        path (Path): 图片写到哪里
    """
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.9), sharey=True, layout="constrained")
    groups = ([BASE, "RMSNorm", "post（后置）", "不归一化"], [BASE, "ReLU", "SwiGLU"])
    titles = ("归一化：种类和位置", "激活函数")
    for axis, names, title in zip(axes, groups, titles):
        for name, color in zip(names, ("0.25", "#2f6fab", "#d9822b", "#c0392b") if len(names) == 4 else ("0.25", "#6a9f4b", "#8e5ea2")):
            steps = range(20, 20 * len(curves[name]) + 1, 20)
            axis.plot(steps, curves[name], color=color, label=name)
            if name == BASE:
                axis.fill_between(steps, [loss - noise for loss in curves[name]], [loss + noise for loss in curves[name]], color="0.85", linewidth=0)
        axis.set_xlabel("步")
        axis.set_title(title)
        axis.legend(frameon=False)
    top = curves[BASE][0]
    axes[0].set_ylim(min(min(each) for each in curves.values()) - 0.1, top + 0.2)  # 学不动的会很高，不让它把别的压扁
    axes[0].set_ylabel("验证损失（灰带：只换种子的误差）")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    """每种配方训练一次，第一种多训练一次（换个种子）来估计误差。"""
    parser = argparse.ArgumentParser(description="实验　归一化与激活函数")
    parser.add_argument("--text", help="训练文本，UTF-8 编码（默认：找到的 the-verdict.txt，没有就用自带的英文短篇）")
    parser.add_argument("--layers", type=int, default=12, help="几个 Transformer 块（默认：12）")
    parser.add_argument("--steps", type=int, default=120, help="每种训练几步（默认：120）")
    parser.add_argument("--lr", type=float, default=0.003, help="学习率（默认：0.003）")
    parser.add_argument("--quick", action="store_true", help="2 个块、40 步，20 秒以内跑完")
    args = parser.parse_args()
    layers, steps, d = (2, 40, 32) if args.quick else (args.layers, args.steps, 64)
    if not 1 <= layers <= 48:
        parser.error(f"--layers 应在 1 到 48 之间，不能是 {layers}")
    if steps < 20:
        parser.error(f"--steps 至少是 20，不能是 {steps}")
    if not 0 < args.lr < 1:
        parser.error(f"--lr 应在 0 到 1 之间，不能是 {args.lr}")
    try:
        path = args.text or find_data("the-verdict.txt", "story-en.txt")
        text = read_text(path)
        if len(text) < 40 * T:
            raise ValueError(f"{path} 只有 {len(text)} 个字符，至少要 {40 * T} 个，请换长一点的文本")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    chars = sorted(set(text))
    ids = torch.tensor([chars.index(char) for char in text])
    split = int(0.9 * len(ids))
    held_out = ids[split:].unfold(0, T + 1, T)[:32]  # (n, t + 1)　互不重叠
    shape = {"vocab_size": len(chars), "context_length": T, "emb_dim": d, "n_heads": 4, "n_layers": layers, "drop_rate": 0.0, "qkv_bias": False}
    print(f"文本　{path}（{len(text):,} 个字符，{len(chars)} 种）　模型　{layers} 个块，d = {d}，字符当词元，学习率 {args.lr}")

    _, again, _ = train(shape | RECIPES[BASE], ids[:split], held_out, steps, args.lr, 124, "换个种子")
    curves, counts, speeds = {}, {}, {}
    print("最后的验证损失   与第一行差   参数    每步毫秒")
    for name, recipe in RECIPES.items():
        model, curves[name], speeds[name] = train(shape | recipe, ids[:split], held_out, steps, args.lr, 123, name)
        counts[name] = sum(p.numel() for p in model.parameters())
        print(f"{curves[name][-1]:11.3f}{curves[name][-1] - curves[BASE][-1]:+14.3f}{counts[name]:12,}{speeds[name]:9.1f}   {name}")
    noise = max(abs(a - b) for a, b in zip(again, curves[BASE]))  # 取相差最大的时候：两次碰巧停在一起，不等于没有误差
    print(f"{again[-1]:11.3f}{again[-1] - curves[BASE][-1]:+14.3f}{counts[BASE]:12,}{'':9}   第一行只换种子；一路上最多差 {noise:.3f}，当作误差")
    picture = OUTPUTS / "norms_and_activations.png"
    draw(curves, noise, picture)
    print(f"图已写到 {picture}")

    gap = {name: each[-1] - curves[BASE][-1] for name, each in curves.items() if name != BASE}
    groups = {word: [name for name, value in gap.items() if keep(value)] for word, keep in [
        ("比它好", lambda value: value < -2 * noise), ("差不多（差别不到误差的两倍）", lambda value: abs(value) <= 2 * noise), ("比它差", lambda value: not value <= 2 * noise)]}
    print(f"\n所以：与 {BASE} 相比，" + "；".join(f"{word}的有 {'、'.join(names)}" for word, names in groups.items() if names) + "。只训练了一次，两次种子只能估个大概。")

    print("\n这个数字对吗？")
    x = torch.randn(2, T, d) * 3 + 1  # (b, t, d)
    ours, theirs = RMSNorm(d)(x), x / x.pow(2).mean(dim=-1, keepdim=True).sqrt()
    confirm("RMSNorm 之后，x² 的平均是 1", torch.allclose(ours, theirs, atol=1e-4), "开方或平均的维度不对")
    spread = max(counts.values()) / min(counts.values()) - 1
    confirm(f"各种配方的参数几乎一样多（最多差 {spread:.1%}，应在 3% 以内）", spread < 0.03, "SwiGLU 的中间宽度不是 8d/3")
    torch.manual_seed(123)
    start = nn.functional.cross_entropy(GPTModel(shape | RECIPES[BASE])(held_out[:, :-1]).flatten(0, 1), held_out[:, 1:].flatten()).item()
    guess = torch.log(torch.tensor(float(len(chars)))).item()
    confirm(f"还没训练，损失 {start:.2f} 接近 ln {len(chars)} = {guess:.2f}", abs(start - guess) < 0.8, "初始权重太大")


if __name__ == "__main__":
    main()
