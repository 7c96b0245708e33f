"""第 4 章 · 4.7 节　生成文本：一次一个词元，接上去，再问一次

读完你应该能回答：
    1. 生成一个词元要哪四步？为什么只看最后一个位置？
    2. 提示词比模型的上下文长度还长时，怎么办？
    3. 没训练过的模型为什么会说胡话？

运行：
    python ch04/main/example_07_generate_text.py
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

START_CONTEXT = "Hello, I am"  # 改这里：提示词
MAX_NEW_TOKENS = 6  # 改这里：再生成几个词元


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


# region 沿用 ch04/main: GPT_CONFIG_124M, LayerNorm, GELU, FeedForward, TransformerBlock, GPTModel
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


# endregion

# %% 4.7　提示词 → 一批编号
tokenizer = tiktoken.get_encoding("gpt2")
encoded = tokenizer.encode(START_CONTEXT)
encoded_tensor = torch.tensor(encoded).unsqueeze(0)  # (b, t)　模型只认成批的输入，一句话就是批大小 1
print(f"【4.7】提示词　{START_CONTEXT}")
print(f"编号　{encoded}")
print(f"输入形状　{tuple(encoded_tensor.shape)}　(b, t)")

# %% 模型：与 4.6 节同一个种子，所以权重也逐位相同
torch.manual_seed(123)
model = GPTModel(GPT_CONFIG_124M)
model.eval()  # 关掉 dropout。忘了它，每次生成的都不一样：这是生成时最常见的错误，而且不报错

# %% 慢动作：生成一个词元
with torch.no_grad():
    logits = model(encoded_tensor)  # (b, t, V)
    last = logits[:, -1, :]  # (b, V)　每个位置都猜了下一个，但只有最后一个位置的"下一个"还不知道
    probabilities = torch.softmax(last, dim=-1)  # (b, V)　分数 → 概率
    next_id = torch.argmax(probabilities, dim=-1, keepdim=True)  # (b, 1)　取概率最大的，叫贪心解码
    extended = torch.cat((encoded_tensor, next_id), dim=1)  # (b, t + 1)　接到后面，就是下一步的输入
print("\n慢动作：生成第 1 个词元")
print(f"  ① 模型给出　　　{tuple(logits.shape)}　(b, t, V)")
print(f"  ② 取最后一行　　{tuple(last.shape)}　(b, V)")
print("  ③ softmax 之后，概率最大的五个：")
top = probabilities[0].topk(5)
for probability, token in zip(top.values.tolist(), top.indices.tolist()):
    print(f"       {token:>6} {tokenizer.decode([token])!r:<14} {probability:.6f}")
print(f"  ④ 取最大，接上　{extended.tolist()}")

# 没训练过的模型给每个词元的概率都很小，最大的也只有万分之几：它不是"选错了"，而是根本没有把握。
# 第 5 章的训练，就是把概率从别的词元那里挪到对的词元上。
average = 1 / probabilities.numel()  # 1 / V
print(f"平均每个词元的概率是 {average:.6f}，最大的是它的 {probabilities.max() / average:.0f} 倍")
print(f"训练好的模型对下一个词元有一半把握时，是 {0.5 / average:,.0f} 倍")


# %% 把这四步放进循环：generate_text_simple
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


out = generate_text_simple(
    model=model,
    idx=encoded_tensor,
    max_new_tokens=MAX_NEW_TOKENS,
    context_size=GPT_CONFIG_124M["context_length"],
)
print(f"\n输出编号　{out.tolist()}")
print(f"输出长度　{out.shape[1]}")

# %% 编号 → 文本
print(f"输出文本　{tokenizer.decode(out[0].tolist())}")

# %% 这个数字对吗？
print("\n这个数字对吗？")
total = probabilities.sum().item()
confirm(f"概率的总和是 1（得到 {total:.4f}）", abs(total - 1) < 1e-4, "softmax 的 dim 不是最后一维")
same = torch.equal(extended, out[:, : len(encoded) + 1])
confirm("慢动作的第一步与 generate_text_simple 相同", same, "取的不是最后一个位置，或忘了 model.eval()")
again = generate_text_simple(model, encoded_tensor, MAX_NEW_TOKENS, GPT_CONFIG_124M["context_length"])
confirm("再生成一次，一个编号都不变：贪心解码没有随机性", torch.equal(again, out), "忘了 model.eval()")
if START_CONTEXT == "Hello, I am" and MAX_NEW_TOKENS == 6:
    book = [15496, 11, 314, 716, 27018, 24086, 47843, 30961, 42348, 7267]
    confirm("10 个编号与原书逐个相同", out[0].tolist() == book, "忘了 model.eval()，或创建各层的次序变了")

# %% 动手改
# 1. 把 model.eval() 注释掉：哪几条自查变成 ✗？
# 2. 把 START_CONTEXT 换成别的句子，中文也行：一个词是几个词元？写出来的还是胡话吗？
# 3. 把 context_size=GPT_CONFIG_124M["context_length"] 改成 context_size=2：每次只看最近 2 个词元，第 1 个新词元还是
#    27018 吗？（三条自查会变成 ✗：它们都是看着整句话算的）
# 4. 把 generate_text_simple 里的 logits[:, -1, :] 改成 logits[:, 0, :]：它接的是谁的下一个？哪两条自查发现了？
