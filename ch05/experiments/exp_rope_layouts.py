"""第 5 章 · 实验　同一个 RoPE，两种摆法：装错了不报错，模型却变傻了

问题：　旋转位置编码（RoPE）把每个头的数两两配对来转。有的代码拿第 i 个与第 i + k/2 个配，有的拿相邻的两个配：权重混用，损失高多少？
先猜：　装错了会不会报错？自己与自己的分数对不对？只换 W_query 的行、忘了 W_key 呢？（先想 10 秒，再运行）
看点：　① 换过行，两种摆法的分数就相同；② 左图：谁与谁一对；③ 中图：装错以后，距离 0 的分数分毫不差，越往远越乱；
        ④ 右图和续写：没有一处报错，只是说的话变差了。比"不转"（完全不知道位置）好，还是更糟？
动手改：1. 把 HEADS 改成 32：每个头只有 2 个数，只有一对，两种摆法就没有分别，怎么装都对。
        2. 把 BOTH 改成 ["W_query", "W_key", "W_value"]：换多了也不行。值没有转过，out_proj 等的还是原来的次序，「换过行」那几条自查变成 ✗。
        3. 把 to_interleaved 里的 2, rows // 2 换成 rows // 2, 2（就是 to_half_split）：方向弄反了，形状一样，也不报错，自查变成 ✗。

两种摆法从哪里来：论文把相邻两个数看成一个复数，乘 e^(iθ) 就是转 θ 角，Meta 的代码照这样写；GPT-NeoX 和 Hugging Face 对半切，
不用隔一个取一个。所以 Meta 的 .pth、GGUF 里的 Llama 是相邻摆法，Hugging Face 的 safetensors 是对半摆法：转换文件的程序要换行。

运行：
    python ch05/experiments/exp_rope_layouts.py             # 图片写到 ch05/outputs/
    python ch05/experiments/exp_rope_layouts.py --quick
    约 20 秒，0.5 GB（2 核 CPU）

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　k 每个头的维度　V 词表大小（这里词元就是字符）
"""

import argparse
import copy
import os
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"

# 改这里
HEADS = 4  # 头数，每个头 64 / 4 = 16 个数，8 对
DIM, LAYERS, CONTEXT = 64, 2, 64
BOTH = ["W_query", "W_key"]  # 要换行的是哪几个：转的是查询和键，就换这两个


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


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


# region 沿用 ch04/experiments/exp_seed_noise.py: encode_characters, bigram_loss, validation_loss, train
def encode_characters(text):
    """按字符编号，前九成作训练集，后一成作验证集。（详解见 ch04/experiments/exp_seed_noise.py）"""
    chars = sorted(set(text))
    number = {char: i for i, char in enumerate(chars)}
    ids = torch.tensor([number[char] for char in text])
    return ids[: len(ids) * 9 // 10], ids[len(ids) * 9 // 10 :], chars


def bigram_loss(train_ids, val_ids, vocab_size):
    """只看前一个字符、靠数数猜下一个，验证损失是多少：不比它低，就什么上下文也没有学到。（详解见 ch04/experiments/exp_seed_noise.py）"""
    pairs = train_ids[:-1] * vocab_size + train_ids[1:]
    counts = torch.bincount(pairs, minlength=vocab_size**2).view(vocab_size, vocab_size) + 0.1  # (V, V)
    probs = counts / counts.sum(dim=1, keepdim=True)
    return -probs[val_ids[:-1], val_ids[1:]].log().mean().item()


def validation_loss(model, ids, context_length):
    """整个验证集的平均损失：首尾相接地切成若干段，一批算完。（详解见 ch04/experiments/exp_seed_noise.py）"""
    model.eval()
    n = (len(ids) - 1) // context_length * context_length
    inputs, targets = ids[:n].view(-1, context_length), ids[1 : n + 1]  # (b, t)，(b·t,)
    with torch.no_grad():
        return nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets).item()


def train(model, train_ids, val_ids, context_length, steps, seed, extra_loss=None):
    """训练一个小模型，记下验证损失的曲线。（详解见 ch04/experiments/exp_seed_noise.py）"""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.1)
    curve = [(0, validation_loss(model, val_ids, context_length))]
    for step in range(1, steps + 1):
        model.train()
        starts = torch.randint(len(train_ids) - context_length, (16, 1), generator=generator)  # (b, 1)
        window = train_ids[starts + torch.arange(context_length + 1)]  # (b, t + 1)
        loss = nn.functional.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        if extra_loss is not None:
            loss = loss + extra_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % max(1, steps // 20) == 0 or step == steps:
            curve.append((step, validation_loss(model, val_ids, context_length)))
    return curve


# endregion


def compute_rope_params(head_dim, theta_base=10_000, context_length=4096, freq_config=None):
    """旋转位置编码（RoPE）的 cos 和 sin 表：位置 m、第 i 对数转的角度是 m · θ_base^(−2i/k)。

    参数:
        head_dim (int): 每个头的维度 k，偶数：两个数一对
        theta_base (float): 底数，越大，后面的对转得越慢，分得清的距离越远；Llama 2 用 1 万，Llama 3 用 50 万
        context_length (int): 表有多少行，即最多多少个位置
        freq_config (dict 或 None): Llama 3.1 起拉长上下文的办法：factor、low_freq_factor、high_freq_factor、original_context_length；None 表示不拉

    形状:
        cos、sin (t, k)　两半相同，每一半 k/2 个角度，一对一个

    返回:
        tuple[Tensor, Tensor]: cos 和 sin

    异常:
        ValueError: head_dim 是奇数

    出处: 原书仓库 ch05/07_gpt_to_llama；Su 等，RoFormer，2021
    """
    if head_dim % 2 != 0:
        raise ValueError(f"head_dim={head_dim} 是奇数，RoPE 要把每个头的数两两配对")
    # 每走一个位置，第 i 对转多少弧度。第 0 对转得最快（1 弧度），像秒针；最后一对最慢，像时针。
    inv_freq = 1.0 / theta_base ** (torch.arange(0, head_dim, 2).float() / head_dim)  # (k/2,)
    if freq_config is not None:
        # 波长：转一整圈要走多少个位置。训练时的长度里转过很多圈的，什么角度都见过，不动；一圈也没转完的，拉长的部分没见过，
        # 就把位置压回原来的范围（÷ factor）；两者之间，按转了几圈平滑地过渡。
        length, factor = freq_config["original_context_length"], freq_config["factor"]
        low, high = freq_config["low_freq_factor"], freq_config["high_freq_factor"]
        turns = length * inv_freq / (2 * torch.pi)  # (k/2,)　原来的长度里转几圈
        keep = ((turns - low) / (high - low)).clamp(0, 1)  # (k/2,)　1 是不动，0 是全压
        inv_freq = keep * inv_freq + (1 - keep) * inv_freq / factor  # (k/2,)
    angles = torch.outer(torch.arange(context_length).float(), inv_freq)  # (t, k/2)
    angles = torch.cat([angles, angles], dim=1)  # (t, k)　后一半与前一半相同：第 i 个数和第 i + k/2 个数是一对，转同样的角度
    return angles.cos(), angles.sin()


def apply_rope(x, cos, sin):
    """旋转每一对数，对半摆法（half-split，Hugging Face、GPT-NeoX）：第 i 个数和第 i + k/2 个数是一对。

    参数:
        x (Tensor): 查询或键，(b, h, t, k)
        cos (Tensor): compute_rope_params 的表，至少 t 行，只用前 t 行
        sin (Tensor): 同上

    返回:
        Tensor: 转过的，(b, h, t, k)，数据类型与 x 相同

    出处: 原书仓库 ch05/07_gpt_to_llama
    """
    t, k = x.shape[-2:]
    first, second = x[..., : k // 2], x[..., k // 2 :]  # (b, h, t, k/2)
    # 平面上转 θ 角：(a, b) → (a cos θ − b sin θ, b cos θ + a sin θ)。一次写两半：x cos + [−后一半，前一半] sin。
    turned = torch.cat([-second, first], dim=-1)  # (b, h, t, k)
    return (x * cos[:t] + turned * sin[:t]).to(x.dtype)  # (b, h, t, k)　表是 float32 的：半精度的 x 也用它算，算完再变回去


def apply_rope_interleaved(x, cos, sin):
    """旋转每一对数，相邻摆法（interleaved，论文、Meta、GGUF 里的 Llama）：第 2i 个数和第 2i + 1 个数是一对。

    参数:
        x (Tensor): 查询或键，(b, h, t, k)
        cos (Tensor): compute_rope_params 的表，与 apply_rope 用同一张
        sin (Tensor): 同上

    返回:
        Tensor: 转过的，(b, h, t, k)，数据类型与 x 相同

    出处: Su 等，RoFormer，2021，3.4.2 节
    """
    t, k = x.shape[-2:]
    cos, sin = cos[:t, : k // 2], sin[:t, : k // 2]  # (t, k/2)　表的两半相同，一对取一个角度就够
    even, odd = x[..., ::2], x[..., 1::2]  # (b, h, t, k/2)
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)  # (b, h, t, k/2, 2)
    return turned.flatten(-2).to(x.dtype)  # (b, h, t, k)　两个两个地排回去


def to_half_split(weight, num_heads):
    """W_query 或 W_key 的行，从相邻摆法换成对半摆法：每个头里，偶数行排到前一半，奇数行排到后一半。

    参数:
        weight (Tensor): 权重 (h·k, d)，或偏置 (h·k,)；GQA 的 W_key 传键的份数，不是头数
        num_heads (int): 有几个头（几份键）

    返回:
        Tensor: 形状不变
    """
    rows = weight.shape[0] // num_heads
    pairs = weight.reshape(num_heads, rows // 2, 2, -1)  # (h, k/2, 2, d)　第几对、对里第几个
    return pairs.transpose(1, 2).reshape(weight.shape)  # (h·k, d)　先对里第几个，再第几对


def to_interleaved(weight, num_heads):
    """W_query 或 W_key 的行，从对半摆法换成相邻摆法：to_half_split 的逆。

    参数:
        weight (Tensor): 权重 (h·k, d)，或偏置 (h·k,)
        num_heads (int): 有几个头（几份键）

    返回:
        Tensor: 形状不变
    """
    rows = weight.shape[0] // num_heads
    pairs = weight.reshape(num_heads, 2, rows // 2, -1)  # (h, 2, k/2, d)
    return pairs.transpose(1, 2).reshape(weight.shape)  # (h·k, d)


class RotaryBlock(nn.Module):
    """一个小 Transformer 块，转法由参数给：apply_rope 或 apply_rope_interleaved，其余一模一样。"""

    def __init__(self):
        super().__init__()
        self.W_query, self.W_key, self.W_value, self.out_proj = (nn.Linear(DIM, DIM, bias=False) for _ in range(4))
        self.norm1, self.norm2 = nn.RMSNorm(DIM), nn.RMSNorm(DIM)
        self.ff = nn.Sequential(nn.Linear(DIM, 4 * DIM), nn.GELU(), nn.Linear(4 * DIM, DIM))

    def rotated(self, x, rotate, cos, sin):
        """分好头、转过角度的查询和键。

        参数:
            x (Tensor): (b, t, d)
            rotate (callable): 怎么转
            cos, sin (Tensor): compute_rope_params 的表

        返回:
            list[Tensor]: 查询和键，都是 (b, h, t, k)
        """
        b, t, _ = x.shape
        return [rotate(layer(x).view(b, t, HEADS, -1).transpose(1, 2), cos, sin) for layer in (self.W_query, self.W_key)]

    def forward(self, x, rotate, cos, sin):
        """前向传播。

        参数:
            x (Tensor): (b, t, d)
            rotate (callable): 怎么转
            cos, sin (Tensor): 同 rotated

        返回:
            Tensor: (b, t, d)
        """
        b, t, _ = x.shape
        queries, keys = self.rotated(self.norm1(x), rotate, cos, sin)
        values = self.W_value(self.norm1(x)).view(b, t, HEADS, -1).transpose(1, 2)  # (b, h, t, k)　值不转
        context = nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)  # (b, h, t, k)
        x = x + self.out_proj(context.transpose(1, 2).reshape(b, t, DIM))  # (b, t, d)
        return x + self.ff(self.norm2(x))


class RotaryGPT(nn.Module):
    """字符级的小模型，没有位置嵌入，位置只从旋转来。

    参数:
        vocab_size (int): 有几种字符
        rotate (callable): 怎么转
    """

    def __init__(self, vocab_size, rotate=apply_rope):
        super().__init__()
        self.rotate = rotate
        self.tok_emb = nn.Embedding(vocab_size, DIM)
        self.blocks = nn.ModuleList([RotaryBlock() for _ in range(LAYERS)])
        self.head = nn.Linear(DIM, vocab_size, bias=False)
        self.cos, self.sin = compute_rope_params(DIM // HEADS, context_length=CONTEXT)

    def forward(self, ids):
        """前向传播。

        参数:
            ids (Tensor): 编号，(b, t)

        返回:
            Tensor: logits（未归一化的分数），(b, t, V)
        """
        x = self.tok_emb(ids)  # (b, t, d)
        for block in self.blocks:
            x = block(x, self.rotate, self.cos, self.sin)  # (b, t, d)
        return self.head(x)


def loaded(model, rotate, names):
    """把训练好的（对半摆法的）权重"装进"另一种代码：换一种转法，names 里的几层换成相邻摆法的行。

    参数:
        model (RotaryGPT): 训练好的模型，不会被改动
        rotate (callable): 那种代码怎么转
        names (list[str]): 哪几层换行

    返回:
        RotaryGPT: 装好的模型
    """
    other = copy.deepcopy(model).eval()
    other.rotate = rotate
    for block in other.blocks:
        for name in names:
            layer = getattr(block, name)
            layer.weight = nn.Parameter(to_interleaved(layer.weight.detach(), HEADS))
    return other


@torch.no_grad()
def first_scores(model, ids):
    """第一层的注意力分数，已经除以 √k，没有加掩码。

    参数:
        model (RotaryGPT): 模型
        ids (Tensor): 编号，(b, t)

    返回:
        Tensor: (b, h, t, t)
    """
    block = model.blocks[0]
    queries, keys = block.rotated(block.norm1(model.tok_emb(ids)), model.rotate, model.cos, model.sin)
    return queries @ keys.transpose(2, 3) / queries.shape[-1] ** 0.5  # (b, h, t, t)


@torch.no_grad()
def loss_by_position(model, windows):
    """每个位置的平均损失：前面看得见的越多，该越低。

    参数:
        model (RotaryGPT): 模型
        windows (Tensor): 一段一段的编号，(b, t + 1)

    返回:
        Tensor: 损失，(t,)
    """
    losses = nn.functional.cross_entropy(model(windows[:, :-1]).transpose(1, 2), windows[:, 1:], reduction="none")  # (b, t)
    return losses.mean(dim=0)


@torch.no_grad()
def continue_text(model, ids, count):
    """贪心地续写。

    参数:
        model (RotaryGPT): 模型
        ids (Tensor): 开头，(1, t)
        count (int): 写几个字符

    返回:
        list[int]: 编号，连开头在内
    """
    for _ in range(count):
        ids = torch.cat([ids, model(ids[:, -CONTEXT:])[:, -1:].argmax(dim=-1)], dim=1)  # (1, t + 1)
    return ids[0].tolist()


def by_distance(difference):
    """分数的差，按"查询在键后面几个位置"取平均：(b, h, t, t) → t 个数。"""
    return [difference.diagonal(-back, dim1=-2, dim2=-1).mean().item() for back in range(difference.shape[-1])]


def draw(errors, curves, path):
    """左：8 个数的头里，谁与谁一对；中：分数错多少与距离；右：损失与位置。

    参数:
        errors (dict): 装法 → 每个距离上分数错多少
        curves (dict): 装法 → 每个位置的损失
        path (Path): 图片写到哪里
    """
    figure, (pairs, scores, loss) = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    angle = torch.linspace(0, torch.pi, 40)
    for sign, couples in [(1, [(i, i + 4) for i in range(4)]), (-1, [(2 * i, 2 * i + 1) for i in range(4)])]:
        for i, (a, b) in enumerate(couples):
            pairs.plot((a + b) / 2 - (b - a) / 2 * angle.cos(), sign * (0.35 + (b - a) / 2 * angle.sin()), color=f"C{i}", linewidth=2.5, label=f"第 {i} 对，每个位置转 {10_000 ** (-2 * i / 8):g} 弧度" if sign > 0 else None)
    for place in range(8):
        pairs.text(place, 0, place, ha="center", va="center")
    pairs.text(3.5, 2.9, "对半摆法：i 与 i + k/2", ha="center")
    pairs.text(3.5, -1.35, "相邻摆法：2i 与 2i + 1", ha="center")
    pairs.set(ylim=(-4.6, 3.4), xlabel="每个头里的第几个数（k = 8）", ylabel="同色的弧连着一对", yticks=[], title="谁与谁一起转")
    pairs.legend(loc="lower center", fontsize=8)
    for row, (title, values) in enumerate(errors.items()):
        scores.plot(values, color=f"C{row}", label=title)
    scores.set(xlabel="距离：查询在键后面几个位置", ylabel="分数错多少（绝对值的平均）", title="第一层的注意力分数")
    for row, (title, values) in enumerate(curves.items()):
        loss.plot(values, color="black" if row == 0 else f"C{row - 1}", label=title, linestyle="--" if row == 1 else "-", linewidth=2.5 if row == 0 else 1.5)
    loss.set(xlabel="前面看得见几个字符", ylabel="验证损失", title="同一份权重，装法不同")
    for axis in (scores, loss):  # 上面留给图例
        axis.set_ylim(top=axis.get_ylim()[1] + 0.45 * (axis.get_ylim()[1] - axis.get_ylim()[0]))
        axis.legend(fontsize=8, loc="upper left")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def check_rotations():
    """两种转法的定义：与复数的写法相同，长度不变，分数只看距离。"""
    x = torch.randn(2, 3, 20, 16)  # (b, h, t, k)
    cos, sin = compute_rope_params(16, context_length=20)
    phase = torch.polar(torch.ones(20, 8), torch.outer(torch.arange(20.0), 10_000 ** (-torch.arange(8) / 8)))  # (t, k/2)
    meta = torch.view_as_real(torch.view_as_complex(x.view(2, 3, 20, 8, 2)) * phase).flatten(-2)  # (b, h, t, k)
    confirm("相邻摆法与 Meta 的写法（复数乘 e^(iθ)）相同", torch.allclose(apply_rope_interleaved(x, cos, sin), meta, atol=1e-5), "正负号，或一对取错了")
    for title, rotate in [("对半", apply_rope), ("相邻", apply_rope_interleaved)]:
        turned = rotate(x, cos, sin)
        confirm(f"{title}摆法：转过以后长度不变，第 0 个位置不动", torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-4) and torch.equal(turned[:, :, 0], x[:, :, 0]), "一对里的两个数转的角度不同，那就不是旋转")
        same = rotate(x[:, :, :1].expand_as(x), cos, sin) @ rotate(x[:, :, 1:2].expand_as(x), cos, sin).transpose(2, 3)  # (b, h, t, t)
        confirm(f"{title}摆法：同样的两个词元，换个地方，距离不变分数就不变", torch.allclose(same[:, :, 1:, 1:], same[:, :, :-1, :-1], atol=1e-3), "查询和键转的角度没有相减")


def main():
    """训练一个对半摆法的小模型，用五种装法各读一遍。"""
    parser = argparse.ArgumentParser(description="实验　RoPE 的两种摆法")
    parser.add_argument("--steps", type=int, default=600, help="小模型训练几步（默认：600）")
    parser.add_argument("--seed", type=int, default=123, help="随机种子（默认：123）")
    parser.add_argument("--quick", action="store_true", help="只训练 60 步：看流程，不下结论")
    args = parser.parse_args()
    if args.steps < 1 or not 0 <= args.seed < 2**50:
        parser.error(f"--steps 至少是 1，--seed 不能是负数，不能是 {args.steps} 和 {args.seed}")
    torch.set_num_threads(1)  # 矩阵小，几个线程互相等的时间比算的还长
    steps = min(args.steps, 60) if args.quick else args.steps
    path = find_data("the-verdict.txt", "story-en.txt")
    train_ids, val_ids, chars = encode_characters(path.read_text(encoding="utf-8"))
    torch.manual_seed(args.seed)
    model = RotaryGPT(len(chars))
    print(f"数据　{path}　只看前一个字符、数数，损失 {bigram_loss(train_ids, val_ids, len(chars)):.3f}")
    print(f"模型　{LAYERS} 层，d = {DIM}，{HEADS} 个头，每个头 {DIM // HEADS} 个数；用对半摆法训练 {steps} 步")
    train(model, train_ids, val_ids, CONTEXT, steps, args.seed)

    right, good, mixed, half_done, still = "对半摆法，原样", "相邻摆法，换过行", "相邻摆法，没有换行", "相邻摆法，只换了 W_query", "不转"
    models = {
        right: loaded(model, apply_rope, []),
        good: loaded(model, apply_rope_interleaved, BOTH),
        mixed: loaded(model, apply_rope_interleaved, []),
        half_done: loaded(model, apply_rope_interleaved, BOTH[:1]),
        still: loaded(model, lambda x, cos, sin: x, []),
    }
    windows = val_ids.unfold(0, CONTEXT + 1, 8 if args.quick else 1)  # (b, t + 1)　每个字符都当一次开头：各个位置见到的字符才差不多，比的只是位置
    prompt = val_ids[None, :24]  # (1, 24)
    curves = {title: loss_by_position(each, windows) for title, each in models.items()}
    scores = {title: first_scores(each, windows[:: max(1, len(windows) // 200), :-1]) for title, each in models.items()}
    errors = {title: by_distance((scores[title] - scores[right]).abs()) for title in (good, mixed, half_done, still)}
    size = scores[right].abs().mean().item()
    text = "".join(chars[i] for i in prompt[0].tolist())
    print(f"\n同一份权重，五种装法，没有一种报错；第一层的分数本身大小约 {size:.2f}，续写 {text!r}")
    print("验证损失　分数错多少：距离 0　距离 1　距离 32　装法　　续写的 40 个字符")
    for title, curve in curves.items():
        wrong = errors.get(title, [0.0] * CONTEXT)
        print(f"{curve.mean():8.3f}{wrong[0]:18.2f}{wrong[1]:9.2f}{wrong[32]:9.2f}　　{title}　{''.join(chars[i] for i in continue_text(models[title], prompt, 40)[24:])!r}")
    lost = {title: (curve.mean() - curves[right].mean()).item() for title, curve in curves.items()}
    print("训练太短：看流程，不下结论" if args.quick else f"所以：忘了换行，损失高 {lost[mixed]:.3f}；干脆不转（不知道位置）高 {lost[still]:.3f}。")
    draw(errors, curves, OUTPUTS / "rope_layouts.png")
    print(f"图片已写到 {OUTPUTS / 'rope_layouts.png'}")

    print("\n这个数字对吗？")
    check_rotations()
    weight = torch.randn(48, 64)  # (h·k, d)
    confirm("换过去再换回来，一个数不差", torch.equal(to_half_split(to_interleaved(weight, 3), 3), weight), "两个函数是同一个方向")
    confirm(f"换过行：第一层的分数最多差 {(scores[good] - scores[right]).abs().max():.0e}", torch.allclose(scores[good], scores[right], atol=1e-3), "方向反了，或只换了一个")
    confirm(f"换过行：损失的差 {abs(lost[good]):.0e}", abs(lost[good]) < 1e-3, "换了不该换的：值没有转，W_value 的行不能动")
    confirm("没有换行：距离 0 的分数仍然对，因为查询和键转了同样的角度，点积不变", errors[mixed][0] < 1e-4 * max(size, 1), "查询和键用的不是同一种转法")


if __name__ == "__main__":
    main()
