"""第 4 章 · 4.6 节　完整的 GPT：把块叠起来，前后接上嵌入和输出层

读完你应该能回答：
    1. 从词元编号到 logits（未归一化的分数），数据依次经过哪些层？
    2. 163,009,536 个参数分布在哪里？为什么它又叫 124M？
    3. 随机丢弃（dropout，训练时随机把一部分数换成 0）应当有几个？多一个会怎样，为什么很难发现？

运行：
    python ch04/main/example_06_gpt_model.py
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 3 秒，1.0 GB（2 核 CPU）

形状记号（全书统一）：b 批大小　t 序列长度（词元数）　d 嵌入维度　h 头数　k 每个头的维度（k = d / h）　V 词表大小
"""

import os
import sys
from pathlib import Path

import tiktoken
import torch
import torch.nn as nn


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


# region 沿用 ch04/main: GPT_CONFIG_124M, LayerNorm, GELU, FeedForward, TransformerBlock
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


# endregion


# %% 4.6　4.1 节的骨架，换上真的块和真的归一化
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


# %% 建模型，喂进 4.1 节那两句话
tokenizer = tiktoken.get_encoding("gpt2")
texts = ["Every effort moves you", "Every day holds a"]
batch = torch.stack([torch.tensor(tokenizer.encode(text)) for text in texts])  # (b, t)
torch.manual_seed(123)
model = GPTModel(GPT_CONFIG_124M)
out = model(batch)  # (b, t, V)
print(f"【4.6】输入　{tuple(batch.shape)}　(b, t)")
print(batch)
print(f"\nlogits　{tuple(out.shape)}　(b, t, V)　训练模式，dropout 开着")
print(out)

# %% 第一行与书上的相同吗？不同，就数一数 dropout
# 书上是 0.3613, 0.4222, -0.0711。训练模式下，dropout 丢掉哪些位置可能随操作系统和 PyTorch 版本而变，
# 所以不同不一定是错。一定不能变的是个数：词嵌入之后 1 个（drop_emb），每个块 2 个（att.dropout 和 drop_shortcut）。
# 陷阱：第一行是 0.6525, 0.5753, 0.0174 的话，多半是 FeedForward 末尾多留了一个 Dropout，原书作者早期的代码就是这样。
# 评估模式下它不起作用，4.7 节生成的文字一字不差，要到训练时才悄悄地多丢一次：不数一数，发现不了。
same = torch.allclose(out[0, 0, :3], torch.tensor([0.3613, 0.4222, -0.0711]), atol=1e-3)
dropouts = [name for name, module in model.named_modules() if isinstance(module, nn.Dropout)]
print(f"\n第一行与书上的 0.3613, 0.4222, -0.0711 {'相同' if same else '不同'}")
print(f"模型里有 {len(dropouts)} 个 Dropout：{'、'.join(dropouts[:3])} ……")

# %% 参数有多少
total_params = sum(p.numel() for p in model.parameters())
print(f"\n参数总数　{total_params:,}")
print(f"tok_emb 的形状　{tuple(model.tok_emb.weight.shape)}　(V, d)")
print(f"out_head 的形状　{tuple(model.out_head.weight.shape)}　(V, d)")
# 权重共享时，这两份只数一份。分开存更占内存，但原书作者的经验是分开训练效果更好，今天较大的模型也多半分开。
tied_params = total_params - model.out_head.weight.numel()
print(f"共用一份时　{tied_params:,}　约 {tied_params / 1e6:.0f}M")
total_size_mb = total_params * 4 / 2**20  # float32 每个数 4 字节；1 MB 按 2 的 20 次方字节算，与书上相同
print(f"占内存　{total_size_mb:.2f} MB")

# %% 参数都在哪里
print("\n部件　　　　　　　　　　　参数　　占比")
parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
for name, count in parts.items():
    print(f"{name:<16}{count:>14,}　{count / total_params:6.1%}")
# 一个块里，注意力和前馈网络谁的参数多？这是练习 4.1，先自己数：model.trf_blocks[0].att，model.trf_blocks[0].ff。

# %% 这个数字对吗？
print("\n这个数字对吗？")
shape = (*batch.shape, GPT_CONFIG_124M["vocab_size"])
confirm(f"logits 的形状是 {shape}", out.shape == shape, "输出层的方向反了，应该是 d → V")
expected = 1 + 2 * len(model.trf_blocks)
claim = f"模型里正好有 {expected} 个 Dropout：1 个 drop_emb，每块 2 个"
confirm(claim, len(dropouts) == expected, "FeedForward 末尾多留了一个 Dropout，或块里少了一个")
if list(GPT_CONFIG_124M.values()) == [50257, 1024, 768, 12, 12, 0.1, False]:  # 配置没有改过，才与书上的数比
    same = (total_params, tied_params) == (163_009_536, 124_412_160)
    confirm("参数总数 163,009,536，共用时 124,412,160", same, "哪一层多了、少了偏置")
    confirm("占内存 621.83 MB", f"{total_size_mb:.2f}" == "621.83", "按 1000 × 1000 换算了 MB")
same = sum(parts.values()) == total_params
confirm("各部件加起来正好是总数", same, "有部件没有登记成子模块，比如把块放进了普通列表")

# %% 动手改
# 1. 在 FeedForward 的最后一个 nn.Linear 后面加一行 nn.Dropout(cfg["drop_rate"]),：第一行变成什么？哪一条自查发现了它？
# 2. 把 n_layers 改成 24（其余不变）：参数总数增加 12 × 7,085,568，表里哪一行变了？
# 3. 把 emb_dim 改成 1024、n_heads 改成 16、n_layers 改成 24，就是 GPT-2 medium：参数总数是多少？（练习 4.2）
