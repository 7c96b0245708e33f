"""第 4 章 · 4.1–4.7 节　从零搭出 GPT-2，并让它生成文本

读完、敲完这个脚本，你应该能不看书回答：
    1. 一个 Transformer 块里有哪几样东西，按什么次序连起来？残差连接绕过了谁？
    2. GPT-2 small 的 163,009,536 个参数都花在哪里了？为什么论文里说它是 1.24 亿？
    3. 模型一次输出 t × 50257 个分数，生成下一个词元时为什么只看最后一行？

运行：
    python ch04/main/gpt.py                                  # 与原书的 gpt.py 逐位相同（没训练过，输出是胡话）
    python ch04/main/gpt.py --prompt "Every effort" --max-new-tokens 5
    约 3 秒，1.0 GB（2 核 CPU）

形状记号（全书统一）：
    b 批大小　　t 序列长度（词元数）　　d 嵌入维度　　h 头数　　k 每个头的维度（k = d / h）　　V 词表大小
"""

import argparse
import os
import sys
from pathlib import Path

import tiktoken
import torch
import torch.nn as nn


# 改这里：七个数改哪个都行（改了 n_layers、emb_dim 等，参数总数那条自查会变成 ✗）
# region 沿用（含注释） ch04/main: GPT_CONFIG_124M
# GPT-2 small 的全部超参数。改其中一个再运行，看看参数量和输出怎样变，是理解它们最快的办法。
GPT_CONFIG_124M = {
    "vocab_size": 50257,  # 词表大小 V：GPT-2 的 BPE 分词器有这么多词元
    "context_length": 1024,  # 一次最多看多少个词元；位置嵌入只有这么多行，再长就没有位置可用
    "emb_dim": 768,  # 嵌入维度 d：每个词元用几个数表示。翻倍，每个块的参数变 4 倍，总数约 3 倍
    "n_heads": 12,  # 注意力头数 h，必须能整除 d
    "n_layers": 12,  # 叠几个 Transformer 块。翻倍，块里的参数量也翻倍
    "drop_rate": 0.1,  # 训练时随机丢弃的比例，防止过拟合；评估和生成时自动关闭
    "qkv_bias": False,  # Q、K、V 的投影带不带偏置；加载 OpenAI 的权重时要改成 True
}
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


# region 沿用（含注释） ch04/main: LayerNorm, GELU, FeedForward, TransformerBlock, GPTModel, generate_text_simple
class LayerNorm(nn.Module):
    """层归一化（layer normalization）：把每个词元的 d 个数调成均值 0、方差 1，再学着缩放和平移。

    网络一深，数值会一层层放大或缩小，梯度跟着爆炸或消失；每层都把数值拉回同一个尺度，训练才稳。
    它只看一个词元自己的 d 个数，与批里其他样本无关，所以批大小是 1 也能用（批归一化就不行）。

    参数:
        emb_dim (int): 嵌入维度 d

    形状:
        输入 (…, d) → 输出 (…, d)：只看最后一维，前面有几维都行，在 GPT 里是 (b, t, d)

    出处: 原书 4.2 节
    """

    def __init__(self, emb_dim):
        super().__init__()
        self.eps = 1e-5  # 方差可能是 0，加上一点点，免得除以 0
        # 一律调成均值 0、方差 1 未必对每一层都好，所以让模型自己学该缩放、平移多少；初值等于"不改"。
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x):
        """y = scale · (x − 均值) / √(方差 + eps) + shift。

        参数:
            x (Tensor): (…, d)

        返回:
            Tensor: (…, d)
        """
        mean = x.mean(dim=-1, keepdim=True)  # (…, 1)　keepdim 留住最后一维，下面才能广播着减
        # unbiased=False：除以 d 而不是 d − 1。统计学上是"有偏"的，但 GPT-2 就是这样算的，要用它的权重就得一致；
        # d = 768 时两者只差千分之一。
        var = x.var(dim=-1, keepdim=True, unbiased=False)  # (…, 1)
        norm_x = (x - mean) / torch.sqrt(var + self.eps)  # (…, d)
        return self.scale * norm_x + self.shift


class GELU(nn.Module):
    """GELU 激活函数：像 ReLU，但拐弯是圆滑的。

    ReLU 对负数一律给 0，那里梯度也是 0，神经元可能就此"死掉"；GELU 对不太负的数仍留一点输出和梯度。
    精确的 GELU 是 x·Φ(x)，Φ(x) 是"随机抽一个标准正态的数，比 x 小的概率"：x 越大，越可能放行。
    当年算 Φ 很慢，GPT-2 用了下面这个便宜的近似；权重是用近似版训练的，今天加载它就得沿用。

    形状:
        输入和输出形状相同，逐个数计算

    出处: 原书 4.3 节；Hendrycks & Gimpel, Gaussian Error Linear Units, 2016
    """

    def forward(self, x):
        """前向传播：0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))。"""
        return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


class FeedForward(nn.Module):
    """前馈网络（feed forward）：先升到 4 倍维度，过激活函数，再降回来。

    注意力负责词元之间传递信息，前馈网络负责把每个词元收到的信息消化掉；它对每个词元各算各的。
    升到 4d 是给它更大的空间来组合特征；降回 d 是为了能接上残差连接，也能一块一块地叠。
    4 这个数是经验：最早的 Transformer 用 512 → 2048，GPT-2 沿用了比例，翻倍就贵一倍。

    参数:
        cfg (dict): 模型配置，用到 emb_dim

    形状:
        输入 (b, t, d) → 中间 (b, t, 4d) → 输出 (b, t, d)

    出处: 原书 4.3 节
    """

    def __init__(self, cfg):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(cfg["emb_dim"], 4 * cfg["emb_dim"]),
            GELU(),  # 两个线性层之间没有它，就等于一个线性层，叠多少层都白叠
            nn.Linear(4 * cfg["emb_dim"], cfg["emb_dim"]),
            # 到此为止，末尾没有 dropout：4.5 节的 Transformer 块在加残差之前丢弃一次，这里再丢就丢了两次，而且不报错。
        )

    def forward(self, x):
        """前向传播，(b, t, d) → (b, t, d)。"""
        return self.layers(x)


class TransformerBlock(nn.Module):
    """Transformer 块：注意力 + 前馈网络，各自先归一化、再用残差连接加回去。

        x ─┬─ norm1 ─ att ─ drop_shortcut ─(+)─┬─ norm2 ─ ff ─ drop_shortcut ─(+)─ 输出
           └──────────────────────────────────┘└─────────────────────────────┘

    残差连接（residual / shortcut connection）让输入绕过这一层直接加到输出上：反向传播时梯度也有了一条不打折的路，
    12 层、96 层都训得动。归一化放在每层之前（Pre-LN），残差这条主路上就没有任何东西挡着。

    参数:
        cfg (dict): 模型配置，见 GPT_CONFIG_124M

    形状:
        输入 (b, t, d) → 输出 (b, t, d)，形状不变，所以能叠任意多个

    出处: 原书 4.4–4.5 节
    """

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
        """前向传播。

        参数:
            x (Tensor): (b, t, d)

        返回:
            Tensor: (b, t, d)
        """
        # ① 注意力：词元之间交换信息。
        shortcut = x
        x = self.norm1(x)
        x = self.att(x)  # (b, t, d)
        x = self.drop_shortcut(x)
        x = x + shortcut

        # ② 前馈网络：每个词元各自消化。
        shortcut = x
        x = self.norm2(x)
        x = self.ff(x)  # (b, t, d)
        x = self.drop_shortcut(x)
        return x + shortcut


class GPTModel(nn.Module):
    """GPT：词嵌入 + 位置嵌入 → 一摞 Transformer 块 → 归一化 → 对每个位置给出整个词表的分数。

    参数:
        cfg (dict): 模型配置，见 GPT_CONFIG_124M

    形状:
        输入 (b, t) 的词元编号 → 输出 (b, t, V) 的 logits（未归一化的分数）

    异常:
        ValueError: emb_dim 不能被 n_heads 整除，或前向时序列比 context_length 长

    出处: 原书 4.6 节
    """

    def __init__(self, cfg):
        super().__init__()
        # 创建各层的次序不能变：每一层的初始值都从同一个随机数序列里依次取，次序变了，同一个种子也得不到书上的数。
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.Sequential(*[TransformerBlock(cfg) for _ in range(cfg["n_layers"])])
        self.final_norm = LayerNorm(cfg["emb_dim"])
        # 与 tok_emb 形状相同、方向相反：那边是编号 → 向量，这边是向量 → 每个编号的分数。
        # GPT-2 让两者用同一份：权重共享（weight tying），少 3860 万个参数，正是 163M 与 124M 之差；书里分开存。
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)

    def forward(self, in_idx):
        """前向传播。

        参数:
            in_idx (Tensor): 词元编号，(b, t)

        返回:
            Tensor: logits，(b, t, V)；其中 [:, i] 是"看完 in_idx[:, : i + 1]，下一个词元是谁"的分数

        异常:
            ValueError: 序列比 context_length 长
        """
        t = in_idx.shape[1]
        if t > self.pos_emb.num_embeddings:
            raise ValueError(f"输入有 {t} 个词元，超过了模型的上下文长度 {self.pos_emb.num_embeddings}")

        # ① 编号 → 向量：是哪个词元（tok）加上在第几个位置（pos）。pos 没有批维度，会对每个样本各加一次（广播）。
        tok_embeds = self.tok_emb(in_idx)  # (b, t, d)
        pos_embeds = self.pos_emb(torch.arange(t, device=in_idx.device))  # (t, d)
        x = tok_embeds + pos_embeds  # (b, t, d)
        x = self.drop_emb(x)

        # ② 依次过每个块，每个块把修改量加到主路（残差流，residual stream）上：x 越加越大，所以最后再归一化一次。
        x = self.trf_blocks(x)  # (b, t, d)
        x = self.final_norm(x)

        # ③ 每个位置的向量 → 给词表里的每个词元打一个分。
        return self.out_head(x)  # (b, t, V)


def generate_text_simple(model, idx, max_new_tokens, context_size):
    """贪心解码（greedy decoding）：每次都选分数最高的那个词元，接到后面，再问一次。

    参数:
        model (nn.Module): 语言模型，(b, t) → (b, t, V)；应先调用 model.eval()，否则 dropout 会让结果每次不同
        idx (Tensor): 提示词的词元编号，(b, t)
        max_new_tokens (int): 再生成几个词元
        context_size (int): 模型一次最多看几个词元

    形状:
        输入 (b, t) → 输出 (b, t + max_new_tokens)

    返回:
        Tensor: 提示词连同新生成的词元

    出处: 原书 4.7 节
    """
    for _ in range(max_new_tokens):
        idx_cond = idx[:, -context_size:]  # (b, t)　太长时只留最近的 context_size 个
        with torch.no_grad():  # 只做推理，不必为求梯度记住中间结果，省内存也省时间
            logits = model(idx_cond)  # (b, t, V)
        # 每个位置都给出了"下一个词元"的分数，但前面那些位置的下一个早就知道了，只有最后一个位置是新问题。
        logits = logits[:, -1, :]  # (b, V)
        # softmax 不改变大小次序，只要最大的那个，就不必算概率了。
        idx_next = torch.argmax(logits, dim=-1, keepdim=True)  # (b, 1)
        idx = torch.cat((idx, idx_next), dim=1)  # (b, t + 1)
    return idx


# endregion


# region 沿用 setup/device_check.py: pick_device
def pick_device(name="auto"):
    """选择计算设备；点名要的设备不存在就报错，绝不悄悄换成 CPU。（详解见 setup/device_check.py）"""
    available = {"mps": torch.backends.mps.is_available(), "cuda": torch.cuda.is_available(), "cpu": True}
    name = next(device for device, found in available.items() if found) if name == "auto" else name
    if not available.get(name):
        raise ValueError(f"这台机器上没有设备 {name}；运行 python setup/device_check.py 看有哪些、为什么")
    return torch.device(name)


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
    """建一个没训练过的 GPT-2 small，让它续写，结果与原书 4.7 节逐位相同。"""
    parser = argparse.ArgumentParser(description="4.1–4.7 节　搭出 GPT-2，并生成文本")
    parser.add_argument("--prompt", default="Hello, I am", help="提示词，让模型接着往下写（默认：Hello, I am）")
    parser.add_argument("--max-new-tokens", type=int, default=10, help="生成几个词元（默认：10，与原书的 gpt.py 相同）")
    parser.add_argument("--device", default="cpu", help="auto、mps、cuda 或 cpu（默认：cpu，生成时往往更快）")
    args = parser.parse_args()
    if not args.prompt or args.max_new_tokens < 1:
        parser.error("--prompt 至少要有一个词元，--max-new-tokens 至少是 1")
    try:
        device = pick_device(args.device)
    except ValueError as error:
        parser.error(str(error))

    torch.manual_seed(123)
    model = GPTModel(GPT_CONFIG_124M).to(device)
    model.eval()  # 关掉 dropout：生成时不需要随机性

    tokenizer = tiktoken.get_encoding("gpt2")
    encoded = tokenizer.encode(args.prompt, allowed_special={"<|endoftext|>"})
    encoded_tensor = torch.tensor(encoded, device=device).unsqueeze(0)  # (1, t)　模型只认成批的输入，一句话就是批大小 1
    print(f"提示词　　{tokenizer.decode(encoded)}")
    print(f"词元编号　{encoded}")
    print(f"输入形状　{tuple(encoded_tensor.shape)}　(b, t)")

    out = generate_text_simple(model, encoded_tensor, args.max_new_tokens, GPT_CONFIG_124M["context_length"])
    out = out[0].tolist()
    print(f"\n输出编号　{out}")
    print(f"输出长度　{len(out)} 个词元")
    print(f"输出文本　{tokenizer.decode(out)}")
    print("（模型还没训练，权重是随机数，所以说的是胡话；第 5 章教它说人话）")

    total_params = sum(p.numel() for p in model.parameters())
    tied_params = total_params - model.out_head.weight.numel()
    print(f"\n参数　　　{total_params:,} 个；输出层与词嵌入共用一份时，是 {tied_params:,} 个")
    print(f"占内存　　{total_params * 4 / 2**20:.2f} MB（每个参数是 4 字节的 float32）")

    print("\n这个数字对吗？")
    confirm("参数总数 163,009,536", total_params == 163_009_536, "配置改过，或者哪一层多了、少了偏置")
    dropouts = sum(isinstance(module, nn.Dropout) for module in model.modules())
    expected = 1 + 2 * GPT_CONFIG_124M["n_layers"]
    claim = f"模型里正好有 {expected} 个 Dropout：1 个 drop_emb，每块 2 个"
    confirm(claim, dropouts == expected, "FeedForward 末尾多留了一个 Dropout，或块里少了一个")
    if args.prompt == "Hello, I am" and args.max_new_tokens == 10:
        book = [15496, 11, 314, 716, 27018, 24086, 47843, 30961, 42348, 7267, 49706, 43231, 47062, 34657]
        confirm("14 个编号与原书逐个相同", out == book, "创建各层的次序变了，或忘了 model.eval()")


if __name__ == "__main__":
    main()
