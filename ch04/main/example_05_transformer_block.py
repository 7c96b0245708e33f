"""第 4 章 · 4.5 节　Transformer 块：把注意力、前馈网络、归一化、残差连接连到一起

读完你应该能回答：
    1. 数据在块里走哪条路？残差主路上有什么东西挡着吗？
    2. 注意力和前馈网络，谁会让词元互相影响？
    3. 为什么进去什么形状，出来就是什么形状？

运行：
    python ch04/main/example_05_transformer_block.py
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 1 秒，0.3 GB（2 核 CPU）

形状记号（全书统一）：b 批大小　t 序列长度（词元数）　d 嵌入维度　h 头数　k 每个头的维度（k = d / h）
"""

import torch
import torch.nn as nn


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


# region 沿用 ch04/main: GPT_CONFIG_124M, LayerNorm, GELU, FeedForward
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


# endregion


# %% 4.5　把四样东西连起来
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


# %% 进去 (2, 4, 768)，出来还是 (2, 4, 768)
torch.manual_seed(123)
x = torch.rand(2, 4, 768)  # (b, t, d)
block = TransformerBlock(GPT_CONFIG_124M)
output = block(x)  # (b, t, d)
print(f"【4.5】输入　{tuple(x.shape)}　(b, t, d)")
print(f"输出　{tuple(output.shape)}　(b, t, d)：形状不变，所以能叠 12 个、48 个")

# %% 训练模式：同样的输入，两次输出不同
# 块里有三处 dropout：注意力权重一处，加回主路之前（drop_shortcut）两处。训练时它们逼着模型不依赖任何一条线索。
difference = (block(x) - block(x)).abs().max().item()
print(f"\n训练模式，同一个输入跑两次，最多相差 {difference:.4f}")
block.eval()  # 下面要一步一步核对，先把随机性关掉
difference_eval = (block(x) - block(x)).abs().max().item()
print(f"评估模式，同一个输入跑两次，最多相差 {difference_eval:.4f}")


# %% 慢动作：看主路（残差流，residual stream）上的数有多大
def size(vectors):
    """每个词元的向量有多长（L2 范数），取平均；(b, t, d) → 一个数。"""
    return vectors.norm(dim=-1).mean().item()


# 归一化后每个数的方差是 1，768 个数的长度就是 √768 ≈ 27.7，不管进来时多长。
# 它只归一化支路的"输入副本"，主路上的 x 原封不动：这就是 Pre-LN。若归一化放在加号之后（Post-LN，最早的
# Transformer 的做法），主路每过一块就被改写一次，叠得深了就难训练。
with torch.no_grad():
    normed_1 = block.norm1(x)  # (b, t, d)
    attended = block.att(normed_1)  # (b, t, d)
    after_attention = x + attended  # (b, t, d)
    normed_2 = block.norm2(after_attention)  # (b, t, d)
    digested = block.ff(normed_2)  # (b, t, d)
    step_by_step = after_attention + digested  # (b, t, d)
print("\n慢动作：每个词元的向量平均有多长")
print(f"  {size(x):6.2f}　输入 x")
print(f"  {size(normed_1):6.2f}　① 支路：norm1 之后（√768 = {768**0.5:.2f}）")
print(f"  {size(attended):6.2f}　① 支路：att 之后，这是要加到主路上的修改量")
print(f"  {size(after_attention):6.2f}　① 主路：加上修改量之后")
print(f"  {size(normed_2):6.2f}　② 支路：norm2 之后")
print(f"  {size(digested):6.2f}　② 支路：ff 之后，第二份修改量")
print(f"  {size(step_by_step):6.2f}　② 主路：加上修改量，就是这个块的输出")
# 余弦相似度是 1 表示方向一点没变，0 表示毫不相干：块是在输入上"添几笔"，还是推倒重来？
similarity = nn.functional.cosine_similarity(x, step_by_step, dim=-1).mean().item()
print(f"输出与输入的余弦相似度，平均 {similarity:.2f}")

# %% 谁让词元互相影响？改掉第 3 个词元，看哪些位置的输出变了
# 因果掩码只许往前看，所以第 1、2 个位置看不到第 3 个；第 4 个看得到。前馈网络逐个词元算，影响传不出去。
changed = x.clone()
changed[:, 2] = 0
with torch.no_grad():
    moved = (block(changed) - block(x)).abs().amax(dim=(0, 2))  # (t,)
    moved_ff = (block.ff(changed) - block.ff(x)).abs().amax(dim=(0, 2))  # (t,)
print("\n改动第 3 个词元，四个位置的输出最多各变了多少")
print("  整个块　　", [round(v, 4) for v in moved.tolist()])
print("  只过前馈　", [round(v, 4) for v in moved_ff.tolist()])

# %% 这个数字对吗？
print("\n这个数字对吗？")
confirm("输出形状与输入相同：(2, 4, 768)", output.shape == x.shape == (2, 4, 768), "前馈网络忘了降维")
same = torch.allclose(step_by_step, block(x), atol=1e-5)
confirm("一步一步算的，与 block(x) 相同", same, "残差加的是归一化之后的 x，应是之前的")
as_expected = difference > 0 and difference_eval == 0
confirm("训练模式有随机性，评估模式没有", as_expected, "drop_rate 是 0，或没有调用 block.eval()")
only = (moved[:2] < 1e-5).all().item() and (moved[2:] > 1e-3).all().item()
confirm("改动第 3 个词元，只影响第 3、4 个位置", only, "因果掩码没有生效")
alone = (moved_ff[[0, 1, 3]] < 1e-5).all().item()
confirm("前馈网络不在词元之间传递信息", alone, "前馈网络里混进了沿 t 方向的计算")

# %% 动手改
# 1. 把 torch.rand(2, 4, 768) 改成 torch.rand(2, 4, 768) * 100：norm1 之后的长度变吗？att 的修改量相对主路呢？
# 2. 把慢动作里 block.att(normed_1) 的 normed_1 换成 x（跳过 norm1）：att 的输出小了两成多，也与 block(x) 对不上了。
# 3. 再接一块：second = TransformerBlock(GPT_CONFIG_124M)，看 second(block(x)) 的形状，这就是 4.6 节要做的事。
