"""第 4 章 · 实验　模型是在哪一层「想到」下一个词的？

问题：　每过一个 Transformer 块，就提前用 final_norm 和 out_head 看一眼：这时模型会猜什么？猜对的概率是多少？
先猜：　答案是最后一层突然冒出来的，还是一层层越来越清楚？（先想 10 秒，再运行）
看点：　① 图上从下往上是 0 个块到最后一个块：格里是那时最可能的词元，颜色是它的概率；② 每一层猜对的有几成，在哪一层涨得最多；
        ③ 没训练过的同样模型：从头到尾都是乱猜，说明这不是结构白送的；④ 浅层猜不对，不等于浅层不知道（见 lens 的说明）。
动手改：1. --prompt "Every effort moves you a little further"：训练文本里没有的话，图上淡得多，猜的也多半是背过的片段。
        2. --text setup/data/story-zh.txt：没学过的中文，训练过的模型也全猜错，哪一层都一样。
        3. 把 lens 里 seen.append 那一行的 model.final_norm(x) 换成 x：各层的概率都变了，最后一层也不再是模型的输出，第一条自查变成 ✗。

运行：
    python ch05/main/gpt_train.py                       # 先训练一个小模型（约 90 秒）
    python ch04/experiments/exp_logit_lens.py           # 图片写到 ch04/outputs/
    约 4 秒，1 GB（2 核 CPU）

形状记号：b 批大小（这里是 1）　t 序列长度　d 嵌入维度　h 头数　k 每个头的维度　V 词表大小　n 层数加 1
"""

import argparse
import os
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import tiktoken
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"


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


@torch.no_grad()
def lens(model, ids):
    """每过一个块，提前看一眼：把主路上的向量直接送进 final_norm 和 out_head。

    能这样看，是因为残差连接：每个块只是往同一条主路上加一点东西，主路上的向量从头到尾住在同一个空间里。
    但"说的是同一种话"只是近似：out_head 是照最后一层训练的，前几层的话它未必听得懂。这里猜不对，可能是那一层还不知道，
    也可能是知道了、却用别的方向记着。tuned lens 给每一层先学一个小小的线性"翻译"再送进 out_head，浅层就读得出更多；
    所以这里每一层的数，是那一层知道多少的下限。

    参数:
        model (GPTModel): 模型，评估模式
        ids (Tensor): 词元编号，(1, t)

    返回:
        Tensor: 每一层、每个位置对下一个词元的概率，(n, t, V)；第 0 层是只有嵌入、还没过块的时候

    出处: nostalgebraist，interpreting GPT: the logit lens，2020；Belrose et al.，tuned lens，2023
    """
    x = model.tok_emb(ids) + model.pos_emb(torch.arange(ids.shape[1]))  # (1, t, d)
    seen = [model.out_head(model.final_norm(x))]  # 每项 (1, t, V)
    for block in model.trf_blocks:
        x = block(x)  # (1, t, d)
        seen.append(model.out_head(model.final_norm(x)))
    return torch.softmax(torch.cat(seen), dim=-1)  # (n, t, V)


def summarize(probs, answers):
    """每一层一行：猜对几成、给答案的平均概率、与最后一层猜得一样的有几成。

    参数:
        probs (Tensor): lens 的结果，(n, t, V)
        answers (Tensor): 真正的下一个词元，(t - 1,)；最后一个位置没有答案，不算

    返回:
        list[tuple[float, float, float]]: 每层三个数
    """
    best, final = probs.argmax(dim=-1), probs[-1].argmax(dim=-1)  # (n, t)，(t,)
    given = probs[:, :-1].gather(2, answers.expand(len(probs), -1).unsqueeze(-1)).squeeze(-1)  # (n, t - 1)
    return [((row[:-1] == answers).float().mean().item(), p.mean().item(), (row == final).float().mean().item()) for row, p in zip(best, given)]


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


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def draw(probs, ids, to_text, path):
    """画一张表：列是位置，从下往上是层；格里写那时最可能的词元，颜色是概率，猜对的加框。

    参数:
        probs (Tensor): lens 的结果，(n, t, V)
        ids (list[int]): 输入的词元编号
        to_text (callable): 词元编号 → 文字
        path (Path): 图片写到哪里
    """
    best, index = probs.max(dim=-1)  # 都是 (n, t)
    n, t = index.shape
    figure, axis = plt.subplots(figsize=(0.95 * t + 1.6, 0.6 * n + 1.7), layout="constrained")
    image = axis.imshow(best.numpy(), cmap="Blues", vmin=0, vmax=1, origin="lower", aspect="auto")
    for i in range(n):
        for j in range(t):
            guess = index[i, j].item()
            axis.text(j, i, to_text(guess), ha="center", va="center", fontsize=10, color="white" if best[i, j] > 0.6 else "black")
            if j + 1 < t and guess == ids[j + 1]:
                axis.add_patch(plt.Rectangle((j - 0.47, i - 0.45), 0.94, 0.9, fill=False, edgecolor="#d9822b", linewidth=1.8))
    axis.set_xticks(range(t), [to_text(token) for token in ids], fontsize=10)
    axis.set_yticks(range(n), ["只有嵌入"] + [f"第 {i} 个块之后" for i in range(1, n)])
    axis.set_xlabel("输入的词元；格里是这时猜的下一个，橙框是猜对了")
    figure.colorbar(image, label="概率")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    """画一句话的每一层，再在一长段文字上统计。"""
    parser = argparse.ArgumentParser(description="实验　logit lens：每一层在猜什么")
    parser.add_argument("--prompt", default="Every autumn, when the first ships of the new season", help="画哪句话，3 到 14 个词元")
    parser.add_argument("--text", help="统计用的文本，UTF-8 编码（默认：找到的 the-verdict.txt，没有就用自带的英文短篇）")
    args = parser.parse_args()
    path = args.text or find_data("the-verdict.txt", "story-en.txt")
    try:
        text = read_text(path)
    except ValueError as error:
        parser.error(str(error))
    checkpoint = find_data("gpt_mini.pth")
    ckpt = torch.load(checkpoint, map_location="cpu", weights_only=True)
    torch.manual_seed(123)
    model, fresh = GPTModel(ckpt["config"]).eval(), GPTModel(ckpt["config"]).eval()  # fresh 不装权重，作对照
    model.load_state_dict(ckpt["model"])
    tokenizer, limit = tiktoken.get_encoding("gpt2"), ckpt["config"]["context_length"]
    ids = torch.tensor([tokenizer.encode(args.prompt, disallowed_special=())])  # (b, t) = (1, t)
    long_ids = torch.tensor([tokenizer.encode(text, disallowed_special=())[: min(limit, 128)]])  # (1, m)　最多 128 个
    if not 3 <= ids.shape[1] <= min(14, limit):
        parser.error(f"--prompt 应有 3 到 {min(14, limit)} 个词元，这句话有 {ids.shape[1]} 个")
    if long_ids.shape[1] < 3:
        parser.error(f"{path} 太短，至少要 3 个词元")
    print(f"模型　{checkpoint}，{len(model.trf_blocks)} 个块")

    def to_text(token):
        text = repr(tokenizer.decode([token]))[1:-1]  # 换行等写成 \n
        return text.replace("$", r"\$").replace("\ufffd", "?")  # $ 在图里会被当作公式；半个字没法画

    probs = lens(model, ids)
    picture = OUTPUTS / "logit_lens.png"
    draw(probs, ids[0].tolist(), to_text, picture)
    print(f"「{args.prompt}」每一层的猜测，图已写到 {picture}")

    answers = long_ids[0, 1:]
    long_probs = lens(model, long_ids)
    table, control = summarize(long_probs, answers), summarize(lens(fresh, long_ids), answers)
    print(f"\n在 {path} 的前 {long_ids.shape[1]} 个词元上（没训练过的模型：最后一层猜对 {control[-1][0]:.1%}）")
    print("　　　　　　　猜对　　给答案的概率　与最后一层猜得一样")
    for i, (right, given, same) in enumerate(table):
        print(f"  {'只有嵌入　　' if i == 0 else f'第 {i:2} 个块之后'}{right:9.1%}{given:13.3f}{same:16.1%}")
    jumps = [table[i][1] - table[i - 1][1] for i in range(1, len(table))]
    most = max(range(len(jumps)), key=jumps.__getitem__)
    grown = f"涨得最多的是第 {most + 1} 个块（{jumps[most]:+.3f}）" if jumps[most] > 0.001 else "哪一个块也没有让它涨起来"
    size = ckpt["config"]["vocab_size"]
    print(f"\n所以：给答案的概率，从只有嵌入时的 {table[0][1]:.5f} 到最后的 {table[-1][1]:.5f}，{grown}；乱猜是 1/{size} = {1 / size:.5f}。")

    print("\n这个数字对吗？")
    with torch.no_grad():
        direct = torch.softmax(model(ids), dim=-1)  # (1, t, V)
    error = (direct[0] - probs[-1]).abs().max().item()
    confirm(f"最后一层看到的，就是模型真正的输出（最大误差 {error:.0e}）", error < 1e-5, "漏了 final_norm，或没有 eval()")
    total = probs.sum(dim=-1)
    confirm(f"每一层、每个位置的概率之和为 1（最大误差 {(total - 1).abs().max():.0e}）", torch.allclose(total, torch.ones_like(total), atol=1e-4), "softmax 的 dim 不是最后一维")
    confirm(f"没训练过的模型只是乱猜（猜对 {control[-1][0]:.1%}，给答案的概率 {control[-1][1]:.5f}）", control[-1][1] < 0.001, "对照的模型被训练过了")


if __name__ == "__main__":
    main()
