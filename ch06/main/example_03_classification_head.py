"""第 6 章 · 6.4–6.5 节　装上预训练的权重，把输出层换成分类头

读完你应该能回答：
    1. 会接话的模型，为什么不能直接问它"这是不是垃圾短信"？
    2. 换掉输出层，为什么只训练最后一块、最后的归一化和新的输出层？
    3. 为什么只看最后一个位置？训练时那里几乎总是填充词元，它凭什么知道短信写了什么？

运行：
    python ch06/main/example_03_classification_head.py
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 4 秒，0.5 GB（2 核 CPU）

形状记号（全书统一）：b 批大小　t 序列长度（词元数）　d 嵌入维度　h 头数　k 每个头的维度（k = d / h）　V 词表大小　n 样本数
"""

import os
import sys
from pathlib import Path

import tiktoken
import torch
import torch.nn as nn

# 改这里
WEIGHTS = "gpt_mini.pth"  # 第 5 章自己训练的；换成 "gpt2-124M.pth"，就是书上的模型（先运行 python ch05/main/gpt_download.py）
NUM_CLASSES = 2  # 正常、垃圾


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


# region 沿用 ch04/main: LayerNorm, GELU, FeedForward, TransformerBlock, GPTModel, generate_text_simple
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


def generate_text_simple(model, idx, max_new_tokens, context_size):
    """贪心解码（greedy decoding）：每次都选分数最高的那个词元，接到后面，再问一次。（详解见 ch04/main/example_07_generate_text.py）"""
    for _ in range(max_new_tokens):
        idx_cond = idx[:, -context_size:]  # (b, t)
        with torch.no_grad():
            logits = model(idx_cond)  # (b, t, V)
        logits = logits[:, -1, :]  # (b, V)
        idx_next = torch.argmax(logits, dim=-1, keepdim=True)  # (b, 1)
        idx = torch.cat((idx, idx_next), dim=1)  # (b, t + 1)
    return idx


# endregion


# region 沿用 ch05/main: text_to_token_ids, token_ids_to_text
def text_to_token_ids(text, tokenizer):
    """文本 → 模型的输入，(1, t) 的词元编号。（详解见 ch05/main/example_01_loss.py）"""
    encoded = tokenizer.encode(text, allowed_special={"<|endoftext|>"})
    return torch.tensor(encoded).unsqueeze(0)  # (1, t)


def token_ids_to_text(token_ids, tokenizer):
    """模型的输出 → 文本。（详解见 ch05/main/example_01_loss.py）"""
    return tokenizer.decode(token_ids.squeeze(0).tolist())


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

# %% 6.4　装上预训练的权重
ckpt = torch.load(find_data(WEIGHTS), map_location="cpu", weights_only=True)
config = ckpt["config"] | {"drop_rate": 0.0}  # 与书上相同：只微调几轮，不用 dropout
model = GPTModel(config)
model.load_state_dict(ckpt["model"])
model.eval()
tokenizer = tiktoken.get_encoding("gpt2")
print(f"【6.4】{find_data(WEIGHTS)}　{config['n_layers']} 层，{config['emb_dim']} 维")


# %% 先看它会不会接话：权重装对了没有
def complete(prompt, max_new_tokens):
    """贪心地接着写一段。

    参数:
        prompt (str): 提示词
        max_new_tokens (int): 写几个词元

    返回:
        str: 提示词连同接着写的
    """
    token_ids = text_to_token_ids(prompt, tokenizer)  # (1, t)
    return token_ids_to_text(generate_text_simple(model, token_ids, max_new_tokens, config["context_length"]), tokenizer)


effort = complete("Every effort moves you", 15)
print(repr(effort))

# %% 直接问它：这是不是垃圾短信？
question = (
    "Is the following text 'spam'? Answer with 'yes' or 'no':"
    " 'You are a winner you have been specially"
    " selected to receive $1000 cash or a $2000 award.'"
)
answer = complete(question, 23)[len(question) :]
print(repr(answer))
# 124M 也答不上来，只会把题目再说一遍：预训练只教它接着写，没有教它听话。教它听话是第 7 章的指令微调；
# 如果只要"是或否"，有更省的办法：不让它说话，直接把输出层换成两个数。


# %% 6.5　把语言模型改成分类器
def add_classification_head(model, num_classes=2):
    """把语言模型改成分类器：全部冻结，换掉输出层，再解冻最后一块和最后的归一化。就地修改 model。

    参数:
        model (GPTModel): 预训练过的模型
        num_classes (int): 分几类

    出处: 原书 6.5 节，那里是几行顶层代码
    """
    # ① 冻结全部参数：不求梯度，优化器就不会动它。
    for param in model.parameters():
        param.requires_grad = False

    # ② 换掉输出层：V 个分数 → 2 个分数。新建的层默认就参加训练，所以冻结要在换之前。
    #    是与否，一个数也够（大于 0 算垃圾）；用 2 个，交叉熵、argmax 都能原样照用，要分十类，只改这个数。
    model.out_head = nn.Linear(in_features=model.out_head.in_features, out_features=num_classes)

    # ③ 解冻最后一块和最后的归一化。前面的层学到的是词与词怎样搭配，什么任务都用得着；
    #    越靠后越接近"预测下一个词元"这件具体的事，换了题目，最该改的是它们。
    for part in (model.trf_blocks[-1], model.final_norm):
        for param in part.parameters():
            param.requires_grad = True


old_head = model.out_head
torch.manual_seed(123)  # 新的输出层是随机的
add_classification_head(model, NUM_CLASSES)
old_shape, new_shape = tuple(old_head.weight.shape), tuple(model.out_head.weight.shape)
print(f"\n【6.5】输出层　{old_shape}　(V, d) → {new_shape}　({NUM_CLASSES}, d)，另加 {NUM_CLASSES} 个偏置")
parts = [
    ("词嵌入、位置嵌入", [model.tok_emb, model.pos_emb]),
    ("前面的 Transformer 块", model.trf_blocks[:-1]),
    ("最后一块", [model.trf_blocks[-1]]),
    ("最后的归一化", [model.final_norm]),
    ("输出层", [model.out_head]),
]
for name, modules in parts:
    params = [param for module in modules for param in module.parameters()]
    print(f"  {sum(p.numel() for p in params):>12,} 个参数　{'训练' if params[0].requires_grad else '冻结'}　{name}")
num_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
num_total = sum(p.numel() for p in model.parameters())
print(f"参加训练 {num_trainable:,} 个，占 {num_trainable / num_total:.1%}")

# %% 看看输出
inputs = torch.tensor(tokenizer.encode("Do you have time")).unsqueeze(0)  # (b, t) = (1, 4)
print(f"\n输入　{inputs.tolist()}　{tuple(inputs.shape)}　(b, t)")
with torch.no_grad():
    outputs = model(inputs)  # (b, t, 2)
print(f"输出　{tuple(outputs.shape)}　(b, t, 2)：每个位置都给出两个分数\n{outputs}")
print(f"最后一个位置　{outputs[:, -1, :]}　(b, 2)")

# %% 为什么取最后一个：只有它看过全部词元
# 要判断的是整条短信，只要一个位置的分数。同一句话，只改第一个词或最后一个词，看哪些位置的输出会变。
sentences = ["Do you have time", "Can you have time", "Do you have money"]
ids = torch.tensor([tokenizer.encode(sentence) for sentence in sentences])  # (b, t) = (3, 4)
with torch.no_grad():
    changed = model(ids)  # (b, t, 2)
difference = (changed - changed[0]).abs().amax(dim=-1)  # (b, t)
print("\n每个位置的输出，与原句差多少")
for sentence, row in zip(sentences[1:], difference[1:]):
    print(f"  {sentence:<20}" + "　".join(f"位置 {i + 1}：{value:.3f}" for i, value in enumerate(row.tolist())))
# 因果掩码让每个位置只看得见自己和左边：第一个位置永远只看过第一个词，只有最后一个位置读完了全部（取第一个会怎样，见练习 6.3）。

# %% 可是训练时，最后一个位置几乎总是填充词元
# "Do you have time" 没有填充，最后一个位置是 time。6.3 节的短信都填充过，最后一个位置就成了 50256：
# 词元一样，位置一样，各条短信的差别全靠它从左边看来。还没微调的模型，看得来多少？
path = find_data("SMSSpamCollection.tsv", "messages.tsv")
messages = [line.split("\t")[1] for line in path.read_text(encoding="utf-8").splitlines()[:100]]
encoded = [tokenizer.encode(message, disallowed_special=()) for message in messages]
longest = max(len(row) for row in encoded)
padded = [row + [50256] * (longest - len(row)) for row in encoded]


def spam_minus_ham(rows):
    """最后一个位置上，垃圾的分数减去正常的分数；大于 0 就是答 spam。

    参数:
        rows (list[list[int]]): 各条短信的词元编号，长短可以不一

    返回:
        Tensor: (n,)
    """
    with torch.no_grad():
        scores = torch.cat([model(torch.tensor([row]))[:, -1, :] for row in rows])  # (n, 2)
    return scores[:, 1] - scores[:, 0]  # (n,)


with_padding, without_padding = spam_minus_ham(padded), spam_minus_ham(encoded)
last = sum(row[-1] == 50256 for row in padded)
print(f"\n{path.name} 的头 {len(messages)} 条；填充到 {longest}，有 {last} 条的最后一个位置是 50256")
for name, gap in [("填充过", with_padding), ("没有填充", without_padding)]:
    print(f"  {name:　<4}　答 spam {int((gap > 0).sum()):>3} 条　分数之差：平均 {gap.mean():6.3f}，各条之间的标准差 {gap.std():.3f}")
ratio = with_padding.std() / without_padding.std()
print(f"填充之后，各条之间的差别只剩 {ratio:.0%}")
# 差别小了，100 条就很容易全落在 0 的同一边：没微调过的分类器，在填充过的短信上常常只会答同一类。
# 它不是看不见短信（因果掩码下，填充词元看得见左边的一切），而是还没学会去看：在 GPT-2 的预训练里，50256 之后是另一篇文章，
# 前面写了什么并不重要；mini 连 50256 都没见过。微调要教的正是这件事：在这个固定的位置上，用注意力把前面真正的词收集过来。


# %% 这个数字对吗？
# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion

print("\n这个数字对吗？")
d = config["emb_dim"]
block = 12 * d * d + (10 + 3 * config["qkv_bias"]) * d  # Q、K、V 和 out_proj 4d²，前馈网络 8d²，其余是偏置和归一化
claim = f"最后一块 + 归一化 + 输出层 = {block:,} + {2 * d:,} + {2 * d + 2:,} = {num_trainable:,}"
confirm(claim, num_trainable == block + 2 * d + 2 * d + 2, "解冻了别的层，或忘了解冻")
confirm(f"4 个词元，每个位置 2 个分数：{tuple(outputs.shape)}", outputs.shape == (1, 4, 2), "输出层没有换上")
nn.functional.cross_entropy(model(inputs)[:, -1, :], torch.tensor([0])).backward()
reached = {name for name, param in model.named_parameters() if param.grad is not None}
last_block = f"trf_blocks.{config['n_layers'] - 1}."
wanted = {name for name, _ in model.named_parameters() if name.startswith((last_block, "final_norm.", "out_head."))}
confirm("反向传播之后，有梯度的正好是最后一块、最后的归一化和输出层", reached == wanted, "冻结写在了换输出层之后，或解冻了别的层")
confirm("改最后一个词，前三个位置的输出一点没变", difference[2, :3].max() < 1e-6 < difference[2, 3], "因果掩码没有生效")
confirm("改第一个词，每个位置都变了", bool(difference[1].min() > 0), "残差连接断了")
if WEIGHTS == "gpt2-124M.pth":
    book = "Every effort moves you forward.\n\nThe first step is to understand the importance of your work"
    confirm("接的话与书上相同：Every effort moves you forward.…", effort == book, "某个权重装错了地方")
    repeated = "The following text 'spam'? Answer with 'yes' or 'no': 'You are a winner"
    confirm("问它是不是垃圾短信，与书上一样，又说了一遍题目", repeated in answer, "某个权重装错了地方")
    expected = torch.tensor([[[-1.5854, 0.9904], [-3.7235, 7.4548], [-2.2661, 6.6049], [-3.5983, 3.9902]]])
    same = num_trainable == 7_090_946 and torch.allclose(outputs, expected, atol=2e-3)
    confirm("与书上相同：参加训练 7,090,946 个，最后一个位置 [-3.5983, 3.9902]", same, "新输出层的种子不是 123")

# %% 动手改
# 1. 把 NUM_CLASSES 改成 3：哪些数变了？（头两条自查会变成 ✗，想想为什么）
# 2. 把 add_classification_head 的 ① 挪到 ② 后面：out_head 也被冻结，它会一直是随机的。（第一、第三条自查会变成 ✗）
# 3. 把 ③ 的 model.trf_blocks[-1] 改成 model.trf_blocks[0]：第一块的梯度要穿过后面的每一块。（第三条自查会变成 ✗）
# 4. 把 longest 改成 250：填充词元更多，各条之间的差别还剩多少？（练习 6.1 会一直填充到上下文长度）
