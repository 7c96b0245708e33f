"""第 6 章 · 6.8 节　用微调好的模型判断短信

读完你应该能回答：
    1. 判断一条短信，为什么也要填充到训练时的长度？
    2. 位置嵌入的形状里，哪一个数是上下文长度？认错了会怎样？
    3. 在测试集上答得好，换一种说法的短信也答得好吗？

运行：
    python ch06/main/example_06_classify_review.py        # 先运行 example_05_finetune_classifier.py，得到分类器
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 5 秒，0.5 GB（2 核 CPU）

形状记号（全书统一）：b 批大小　t 序列长度（词元数）　d 嵌入维度　h 头数　k 每个头的维度（k = d / h）　V 词表大小
"""

import csv
import os
import sys
from pathlib import Path

import tiktoken
import torch
import torch.nn as nn

# 改这里
CLASSIFIER = "review_classifier_mini.pth"  # 用 gpt_class_finetune.py --size 124M 微调过的话，换成 "review_classifier_124M.pth"
REVIEWS = [  # 头两条是书上的，后两条换成你自己的
    "You are a winner you have been specially selected to receive $1000 cash or a $2000 award.",
    "Hey, just wanted to check if we're still on for dinner tonight? Let me know!",
    "Congratulations! You have won a new phone. Call 08081 570211 now to claim it",
    "ok see you at the station",
]


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
here = Path(__file__ if "__file__" in globals() else "x").resolve()  # 笔记本里没有 __file__，就从当前文件夹往上找
OUTPUTS = next((folder / "ch06" for folder in here.parents if (folder / "ch06").is_dir()), Path()) / "outputs"

# %% 接着 6.7 节：读回微调好的分类器
if not (OUTPUTS / CLASSIFIER).exists():
    command = "python ch06/main/example_05_finetune_classifier.py（约 1 分钟）"
    print(f"找不到 {OUTPUTS / CLASSIFIER}，请先运行 {command}", file=sys.stderr)
    sys.exit(2)
saved = torch.load(OUTPUTS / CLASSIFIER, map_location="cpu", weights_only=True)
model = GPTModel(saved["config"])
model.out_head = nn.Linear(saved["config"]["emb_dim"], 2)  # 存的是换过输出层的，装之前先换成同样的形状
model.load_state_dict(saved["model"])
tokenizer = tiktoken.get_encoding("gpt2")
print(f"【6.8】{OUTPUTS / CLASSIFIER}　训练时填充到 {saved['max_length']} 个词元")


# %% 判断一条短信
def classify_review(text, model, tokenizer, device, max_length=None, pad_token_id=50256):
    """判断一条短信是不是垃圾短信。

    参数:
        text (str): 短信
        model (GPTModel): 微调好的分类器
        tokenizer (tiktoken.Encoding): 分词器
        device (torch.device): 在哪里算
        max_length (int 或 None): 填充到多长，应与训练时相同；None 表示不填充
        pad_token_id (int): 填充词元的编号

    返回:
        str: "spam" 或 "not spam"

    出处: 原书 6.8 节
    """
    model.eval()
    input_ids = tokenizer.encode(text, disallowed_special=())

    # ① 太长的截断。位置嵌入有 n_ctx 行（上下文长度）、d 列，shape[0] 才是模型最多看得了的长度。
    #    书的第一次印刷写成了 shape[1]，那是嵌入维度：GPT-2 small 是 768，不会报错，只是把长短信多截掉一段。
    supported_context_length = model.pos_emb.weight.shape[0]
    max_length = min(max_length or len(input_ids), supported_context_length)
    input_ids = input_ids[:max_length]

    # ② 太短的填充。训练时总是在填充之后的那个位置作答，现在也得在那里答。
    input_ids += [pad_token_id] * (max_length - len(input_ids))
    input_tensor = torch.tensor(input_ids, device=device).unsqueeze(0)  # (1, t)

    # ③ 与训练时一样，只看最后一个位置。
    with torch.no_grad():
        logits = model(input_tensor)[:, -1, :]  # (1, 2)
    return "spam" if torch.argmax(logits, dim=-1).item() == 1 else "not spam"


answers = [classify_review(text, model, tokenizer, "cpu", max_length=saved["max_length"]) for text in REVIEWS]
print("\n书上 124M 的回答，头两条是 spam、not spam。你的：")
for answer, text in zip(answers, REVIEWS):
    print(f"  {answer:<9}{text}")
# 答错了，多半不是程序的错：分类器只认得与训练短信相像的说法。自带的短信由一百三十个句式拼成，书上这两条的说法，里面没有。


# %% 不填充会怎样
def accuracy_on_test(max_length):
    """在测试集上的准确率，一条一条地判断。

    参数:
        max_length (int 或 None): 填充到多长；None 表示不填充

    返回:
        tuple[float, float]: 准确率，答 spam 的比例
    """
    results = [classify_review(row["Text"], model, tokenizer, "cpu", max_length) for row in rows]
    right = sum((result == "spam") == (row["Label"] == "1") for result, row in zip(results, rows))
    return right / len(rows), results.count("spam") / len(rows)


with open(OUTPUTS / "test.csv", encoding="utf-8", newline="") as file:
    rows = list(csv.DictReader(file))
padded, unpadded = accuracy_on_test(saved["max_length"]), accuracy_on_test(None)
print(f"\n测试集 {len(rows)} 条　　　准确率　答 spam 的占")
print(f"  填充到 {saved['max_length']:<4}　　　　{padded[0]:7.2%}　{padded[1]:7.2%}")
print(f"  不填充　　　　　　　{unpadded[0]:7.2%}　{unpadded[1]:7.2%}")
# 同样的短信，只是去掉了后面那串填充词元。微调教会模型的，是在填充词元的位置上作答（6.5 节）；不填充，
# 最后一个位置就成了短信自己的最后一个词，那里该答什么，没有教过。所以训练时怎么填充，用的时候也要怎么填充。


# %% 这个数字对吗？
# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion

print("\n这个数字对吗？")
confirm("每条的回答不是 spam 就是 not spam", set(answers) <= {"spam", "not spam"}, "返回的是数字")
lengths = []  # 模型收到的输入有多长
hook = model.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
for max_length in (saved["max_length"], None, 10_000):
    classify_review("word " * 9 + "word", model, tokenizer, "cpu", max_length)
hook.remove()
n_ctx = saved["config"]["context_length"]
wanted = [saved["max_length"], 10, n_ctx]
confirm(f"填充到 {wanted[0]}；不填充就是 10 个；再长也不超过上下文长度 {n_ctx}", lengths == wanted, "上下文长度取成了 shape[1]")
share = sum(row["Label"] == "1" for row in rows) / len(rows)
baseline = max(share, 1 - share)
claim = f"测试准确率 {padded[0]:.2%}，高过一律答一类的 {baseline:.2%}"
confirm(claim, padded[0] > baseline, "test.csv 与训练它的不是同一份数据，或没有微调好")

# %% 动手改
# 1. 在 REVIEWS 里写几条自己的短信：换说法、换语言、只写一个词。它在哪里最容易错？
# 2. 把 shape[0] 改成 shape[1]：第二条自查会变成 ✗。对 mini（256 × 192），多长的短信会被多截掉？
# 3. 把 ② 的填充挪到前面：input_ids = [pad_token_id] * (max_length - len(input_ids)) + input_ids，测试准确率掉到多少？
