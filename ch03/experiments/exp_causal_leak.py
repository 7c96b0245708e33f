"""第 3 章 · 实验　忘了因果掩码，会怎样？

问题：　训练时少了因果掩码，训练损失是变大还是变小？拿来生成又会怎样？
先猜：　三个模型只差一张掩码：正常的、没有掩码的、掩码偏了一格的（diagonal=2）。谁的损失最低？（先想 10 秒，再运行）
看点：　① 没有掩码的损失一路降到接近 0，连验证损失也是：不报错，数字还特别好看，这正是它可怕的地方；
        ② 右图：它在每个位置都几乎全对，唯独最后一个位置不行，因为那里没有"下一个"可抄；
        ③ 真实损失：只给它前文，不给它答案，立刻现原形；生成的也全是胡话。
动手改：1. 把 KINDS 里的 2 改成 0：连自己也看不到，第一行全被遮住，softmax 得到 nan，损失也是 nan，到采样那一步就报错了。
        2. 把 KINDS 里的 None 改成 3：能多偷看两格，与偷看一格几乎一样，损失照样接近 0：有一格可抄就够了。
        3. --text 换成自己的文章，比如 setup/data/story-zh.txt：字不同，结论相同。

运行：
    python ch03/experiments/exp_causal_leak.py            # 图片写到 ch03/outputs/
    python ch03/experiments/exp_causal_leak.py --quick
    约 22 秒，0.4 GB（2 核 CPU）

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　k 每个头的维度　V 词表大小
"""

import argparse
import os
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
KINDS = {"正常": 1, "没有掩码": None, "掩码偏一格": 2}  # 掩码从第几条对角线开始遮；None 表示什么也不遮
T = 64  # 上下文长度：够看出道理就行
D, HEADS, LAYERS = 96, 4, 2


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


class CharModel(nn.Module):
    """一个很小的语言模型：字符当词元，只有注意力和残差连接，没有前馈网络（第 4 章才有）。

    用字符，是因为词表只有几十个；GPT-2 的词表有 50257 个，时间会全花在最后一层上。

    参数:
        vocab_size (int): 词表大小，即文本里有几种字符
        diagonal (int 或 None): 掩码从第几条对角线开始遮；1 是正常的因果掩码，None 表示什么也不遮

    形状:
        输入 (b, t) → 输出 (b, t, V)
    """

    def __init__(self, vocab_size, diagonal):
        super().__init__()
        self.tok_emb = nn.Embedding(vocab_size, D)
        self.pos_emb = nn.Embedding(T, D)
        self.layers = nn.ModuleList([MultiHeadAttention(D, D, T, 0.0, HEADS) for _ in range(LAYERS)])
        self.norms = nn.ModuleList([nn.LayerNorm(D) for _ in range(LAYERS + 1)])
        self.out_head = nn.Linear(D, vocab_size)
        everything = torch.ones(T, T, dtype=torch.bool)
        for layer in self.layers:  # 三个模型只差这一处；True 是要遮住
            layer.mask.copy_(torch.zeros_like(everything) if diagonal is None else torch.triu(everything, diagonal=diagonal))

    def forward(self, in_idx):
        """前向传播。

        参数:
            in_idx (Tensor): 字符编号，(b, t)

        返回:
            Tensor: 每个位置对下一个字符的 logits（未归一化的分数），(b, t, V)
        """
        x = self.tok_emb(in_idx) + self.pos_emb.weight[: in_idx.shape[1]]  # (b, t, d)
        for layer, norm in zip(self.layers, self.norms):
            x = x + layer(norm(x))  # (b, t, d)
        return self.out_head(self.norms[-1](x))  # (b, t, V)


def train(model, ids, steps, name):
    """随机取片段训练。

    参数:
        model (nn.Module): 要训练的模型
        ids (Tensor): 训练文本的字符编号，一维
        steps (int): 训练几步
        name (str): 进度条上的名字

    返回:
        list[float]: 每一步的训练损失
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    windows, losses = ids.unfold(0, T + 1, 1), []  # (n, t + 1)　每个起点一个片段；多一个，错开一位就是目标
    for _ in tqdm(range(steps), desc=name, ncols=80, unit="步", leave=False, disable=None):
        batch = windows[torch.randint(len(windows), (16,))]  # (b, t + 1)
        loss = nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def losses_by_position(model, batch):
    """每个位置的损失，量两遍：整段一起送进去，和只送前文。

    第 i 个位置只有前 i 个字符可用时，模型有多准，才是它生成时的真实水平。正常的模型看不到后面，所以两遍应当相同：
    这就是检查有没有泄漏的办法，不用读代码。

    参数:
        model (nn.Module): 语言模型
        batch (Tensor): 片段，(b, t + 1)

    返回:
        tuple[Tensor, Tensor]: 整段送进去的损失、只送前文的损失，都是 (t,)
    """
    inputs, targets = batch[:, :-1], batch[:, 1:]
    whole = nn.functional.cross_entropy(model(inputs).transpose(1, 2), targets, reduction="none").mean(dim=0)  # (t,)
    prefix = [nn.functional.cross_entropy(model(inputs[:, : i + 1])[:, -1], targets[:, i]) for i in range(T)]
    return whole, torch.stack(prefix)  # (t,)，(t,)


@torch.no_grad()
def generate(model, idx, max_new_tokens):
    """一个一个地往后写，按概率采样。

    参数:
        model (nn.Module): 语言模型
        idx (Tensor): 开头，(1, t)
        max_new_tokens (int): 写几个字符

    返回:
        Tensor: 开头和写出的，(1, t + max_new_tokens)
    """
    for _ in range(max_new_tokens):
        logits = model(idx[:, -T:])[:, -1]  # (1, V)
        idx = torch.cat([idx, torch.multinomial(torch.softmax(logits, dim=-1), 1)], dim=1)  # (1, t + 1)
    return idx


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


def draw(curves, positions, guess, path):
    """左图：训练损失；右图：每个位置的损失，实线是整段送进去，虚线是只送前文。

    参数:
        curves (dict[str, list[float]]): 名字 → 每一步的训练损失
        positions (dict[str, tuple[Tensor, Tensor]]): 名字 → losses_by_position 的结果
        guess (float): 闭眼乱猜的损失
        path (Path): 图片写到哪里
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained")
    for name, color in zip(curves, ("#2f6fab", "#d9822b", "#6a9f4b")):
        smooth = torch.tensor(curves[name]).unfold(0, 10, 1).mean(dim=-1)  # (n,)　每 10 步平均一次，免得全是毛刺
        left.plot(range(10, 10 + len(smooth)), smooth, color=color, label=name)
        whole, prefix = positions[name]
        right.plot(range(1, T + 1), whole, color=color)
        right.plot(range(1, T + 1), prefix, color=color, linestyle=":")
    for axis in (left, right):
        axis.axhline(guess, color="0.6", linewidth=0.8)
        axis.set_ylabel("损失")
        axis.set_ylim(bottom=0)
    left.text(0.98, guess, "乱猜：ln V", color="0.4", fontsize=9, ha="right", va="top", transform=left.get_yaxis_transform())
    left.set_xlabel("步")
    left.set_title("训练损失")
    left.legend(frameon=False)
    right.set_xlabel("片段里的第几个位置")
    right.set_title("验证损失：实线整段送入，虚线只送前文")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    """训练三个只差一张掩码的模型，比较损失、真实损失和生成。"""
    parser = argparse.ArgumentParser(description="实验　忘了因果掩码会怎样")
    parser.add_argument("--text", help="训练文本，UTF-8 编码（默认：找到的 the-verdict.txt，没有就用自带的英文短篇）")
    parser.add_argument("--steps", type=int, default=600, help="每个模型训练几步（默认：600）")
    parser.add_argument("--seed", type=int, default=123, help="随机种子（默认：123）")
    parser.add_argument("--quick", action="store_true", help="只训练 160 步，20 秒以内跑完")
    args = parser.parse_args()
    steps = 160 if args.quick else args.steps
    if steps < 20:
        parser.error(f"--steps 至少是 20，不能是 {steps}")
    if not 0 <= args.seed < 2**63:
        parser.error(f"--seed 应是 0 到 2 的 63 次方之间的整数，不能是 {args.seed}")
    try:
        path = args.text or find_data("the-verdict.txt", "story-en.txt")
        text = read_text(path)
        if len(text) < 40 * T:
            raise ValueError(f"{path} 只有 {len(text)} 个字符，至少要 {40 * T} 个，请换长一点的文本")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    chars = sorted(set(text))  # 词表：文本里出现过的字符
    if len(chars) < 10:
        parser.error(f"{path} 里只有 {len(chars)} 种字符，学不到什么，请换一篇正常的文章")
    ids = torch.tensor([chars.index(char) for char in text])
    split = int(0.9 * len(ids))
    guess = torch.log(torch.tensor(float(len(chars)))).item()
    print(f"文本　{path}（{len(text):,} 个字符，{len(chars)} 种；乱猜的损失是 ln {len(chars)} = {guess:.2f}）")

    held_out = ids[split:].unfold(0, T + 1, T)[:64]  # (b, t + 1)　验证片段，互不重叠
    curves, positions, models = {}, {}, {}
    for name, diagonal in KINDS.items():
        torch.manual_seed(args.seed)  # 同样的初始权重、同样的训练片段，差别只来自掩码
        models[name] = CharModel(len(chars), diagonal)
        curves[name] = train(models[name], ids[:split], steps, name)
        positions[name] = losses_by_position(models[name], held_out)

    print("\n训练损失  验证损失  真实损失（只送前文）  最后一个位置")
    summary = {}
    for name, (whole, prefix) in positions.items():
        summary[name] = (sum(curves[name][-10:]) / 10, whole.mean().item(), prefix.mean().item(), whole[-1].item())
        print("{:8.3f}{:10.3f}{:14.3f}{:20.3f}".format(*summary[name]), f"      {name}")
    start = text[split : split + 20]
    print(f"\n给同样的开头 {start!r}，各写 80 个字符")
    for name, model in models.items():
        torch.manual_seed(args.seed)
        written = generate(model, ids[split : split + 20].unsqueeze(0), 80)[0, 20:].tolist()
        print(f"  {name}：{''.join(chars[i] for i in written)!r}")
    picture = OUTPUTS / "causal_leak.png"
    draw(curves, positions, guess, picture)
    print(f"图已写到 {picture}")

    gaps = {name: (whole - prefix).abs().max().item() for name, (whole, prefix) in positions.items()}
    leaky = [name for name in KINDS if gaps[name] > 1e-3]
    for name in leaky:
        ranking = "比正常的还低" if summary[name][1] < summary["正常"][1] else "还没有低过正常的，多训练几步再看"
        print(f"「{name}」：验证损失 {summary[name][1]:.2f}，{ranking}；只给前文就变成 {summary[name][2]:.2f}" + ("，比乱猜还差。" if summary[name][2] > guess else "。"))
    print(f"所以：整段送入与只送前文的损失应当相等；这次不相等的是 {'、'.join(leaky) or '（没有）'}，它们偷看了后文。")

    print("\n这个数字对吗？")
    confirm(f"正常的模型，整段送入与只送前文，每个位置的损失都相同（最多差 {gaps['正常']:.0e}）", gaps["正常"] < 1e-3, "因果掩码没有生效")
    begin = {name: curve[0] for name, curve in curves.items()}
    shown = "、".join(f"{value:.2f}" for value in begin.values())
    confirm(f"刚开始，三个模型的损失都接近乱猜的 {guess:.2f}（{shown}）", all(abs(value - guess) < 0.8 for value in begin.values()), "初始权重太大")
    confirm(f"查得出偷看的：{'、'.join(leaky)}", leaky == [name for name in KINDS if KINDS[name] != 1], "掩码没有真的换掉")


if __name__ == "__main__":
    main()
