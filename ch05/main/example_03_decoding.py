"""第 5 章 · 5.3 节　解码策略：温度与 top-k

读完你应该能回答：
    1. 为什么不总选概率最大的词元？按概率抽取，换来了什么、付出了什么？
    2. 温度是怎样改变分布的？0.1、1、5 各像什么？
    3. top-k 为什么用 -inf 挡，而不是把概率改成 0？

运行：
    python ch05/main/example_03_decoding.py        # 图片写到 ch05/outputs/
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 8 秒，0.7 GB（2 核 CPU）；要先运行 python ch05/main/gpt_train.py，用它训练好的小模型

形状记号（全书统一）：b 批大小　t 序列长度（词元数）　d 嵌入维度　h 头数　k 每个头的维度（k = d / h）　V 词表大小
"""

import os
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import tiktoken
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文

# 改这里
START_CONTEXT = "Every effort moves you"
TEMPERATURES = [1, 0.1, 5]  # 比较哪几种温度
here = Path(__file__ if "__file__" in globals() else "x").resolve()  # 笔记本里没有 __file__，就从当前文件夹往上找
OUTPUTS = next((folder / "ch05" for folder in here.parents if (folder / "ch05").is_dir()), Path()) / "outputs"


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


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion

# %% 5.3　先看贪心解码写了什么
ckpt = torch.load(find_data("gpt_mini.pth"), map_location="cpu", weights_only=True)
model = GPTModel(ckpt["config"])
model.load_state_dict(ckpt["model"])
model.eval()  # 关掉 dropout，否则贪心也会每次不同
tokenizer = tiktoken.get_encoding("gpt2")
context_size = ckpt["config"]["context_length"]
prompt = text_to_token_ids(START_CONTEXT, tokenizer)  # (1, t)
greedy, greedy_again = (generate_text_simple(model, prompt, 25, context_size) for _ in range(2))  # 都是 (1, t + 25)
print("【5.3】贪心解码", repr(token_ids_to_text(greedy, tokenizer)))
print(f"再来一次，{'一个词元也不差' if torch.equal(greedy, greedy_again) else '不一样'}")
# 贪心每次都选第一名，于是同一个提示词永远得到同一段话：训练得少，就翻来覆去地说最常见的词；训练得久，就整段背诵原文。

# %% 5.3.1　换成 9 个词的小词表，把"怎么选"看清楚
# 假设提示词是 every effort moves you，下面是模型给 9 个词的 logits。
vocab = {
    "closer": 0, "every": 1, "effort": 2, "forward": 3, "inches": 4, "moves": 5, "pizza": 6, "toward": 7, "you": 8,
}
inverse_vocab = {number: word for word, number in vocab.items()}
next_token_logits = torch.tensor([4.51, 0.89, -1.90, 6.75, 1.63, -1.62, -1.89, 6.28, 1.79])  # (V,)
probas = torch.softmax(next_token_logits, dim=0)  # (V,)
print("\n【5.3.1】贪心（argmax）　　　　", inverse_vocab[torch.argmax(probas).item()])

# multinomial 按概率抽一个：概率 0.57 的词，抽 100 次大约出现 57 次，但每一次都可能是别的词。
torch.manual_seed(123)
drawn = torch.multinomial(probas, num_samples=1).item()
print("按概率抽一次（multinomial）　　", inverse_vocab[drawn])


def print_sampled_tokens(probas):
    """按给定的概率抽 1000 次，数一数每个词出现了几次。

    参数:
        probas (Tensor): 每个词的概率，(V,)

    返回:
        list[int]: 每个词出现的次数

    出处: 原书 5.3.1 节
    """
    torch.manual_seed(123)
    sample = [torch.multinomial(probas, num_samples=1).item() for _ in range(1_000)]
    counts = torch.bincount(torch.tensor(sample), minlength=len(probas)).tolist()  # minlength：没抽到的也占一格
    for number, count in enumerate(counts):
        print(f"  {count:>4} × {inverse_vocab[number]:<8} 概率 {probas[number]:.4f}")
    return counts


# %% 温度：softmax 之前，logits 先除以一个数
def softmax_with_temperature(logits, temperature):
    """带温度的 softmax。

    参数:
        logits (Tensor): 分数，(V,)
        temperature (float): 大于 0；1 等于不变，小于 1 变尖，大于 1 变平

    返回:
        Tensor: 概率，(V,)，总和为 1

    出处: 原书 5.3.1 节
    """
    return torch.softmax(logits / temperature, dim=0)  # (V,)


# softmax 看的是分数之差：forward 比 toward 高 0.47，概率是 1.6 倍。
# 除以 0.1，差变成 4.7，就是 110 倍；除以 5，差只剩 0.09，几乎一样。
# 温度 1 就是没有温度。温度 0.1 几乎就是贪心；温度 5 时，连 pizza 也每 23 次就有一次：新鲜，但多半不通。
scaled_probas = {temperature: softmax_with_temperature(next_token_logits, temperature) for temperature in TEMPERATURES}
sampled = {}
for temperature, scaled in scaled_probas.items():
    print(f"\n温度 {temperature}，抽 1000 次")
    sampled[temperature] = print_sampled_tokens(scaled)

# %% 画成图：同一组分数，几种温度
figure, axis = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
width = 0.8 / len(TEMPERATURES)
for i, temperature in enumerate(sorted(TEMPERATURES)):  # 从低到高
    places = [number + (i - (len(TEMPERATURES) - 1) / 2) * width for number in range(len(vocab))]
    axis.bar(places, scaled_probas[temperature].tolist(), width, label=f"温度 {temperature}")
axis.set_xticks(range(len(vocab)), vocab.keys())
axis.set_ylabel("概率")
axis.set_title("同一组分数，温度不同")
axis.legend()
OUTPUTS.mkdir(exist_ok=True)
picture = OUTPUTS / "temperature.png"
figure.savefig(picture, dpi=150)
print(f"\n图片　{picture}")

# %% 5.3.2　top-k：只在前 k 名里抽
# 温度高了，胡说的词也有份；top-k 先把第 k 名以外的都挡掉，再在剩下的里面抽，于是可以放心地把温度调高。
top_k = 3
top_logits, top_pos = torch.topk(next_token_logits, top_k)
print("\n【5.3.2】前 3 名的分数", top_logits)
print("前 3 名的位置", top_pos, [inverse_vocab[number] for number in top_pos.tolist()])

# 门槛是第 k 名的分数；比它低的改成 -inf。在 softmax 之前用 -inf 挡，剩下的概率自动加起来等于 1；
# 在 softmax 之后把概率改成 0，总和就不是 1 了，还得再除一次。与第 3 章的因果掩码是同一个道理。
new_logits = torch.where(next_token_logits < top_logits[-1], torch.tensor(-torch.inf), next_token_logits)  # (V,)
print("挡掉其余的　", new_logits)
topk_probas = torch.softmax(new_logits, dim=0)  # (V,)
print("重新归一化　", topk_probas)
hottest = max(TEMPERATURES)
hot = softmax_with_temperature(new_logits, hottest)  # (V,)
pizza = vocab["pizza"]
print(f"温度 {hottest} 时 pizza 的概率　不用 top-k {scaled_probas[hottest][pizza]:.4f}　用 top-k {hot[pizza]:.4f}")


# %% 5.3.3　合在一起：generate
def generate(model, idx, max_new_tokens, context_size, temperature=0.0, top_k=None, eos_id=None):
    """逐个生成词元，可以调温度、限制 top-k，遇到结束词元就停。

    参数:
        model (nn.Module): 语言模型，(b, t) → (b, t, V)；应先调用 model.eval()
        idx (Tensor): 提示词的词元编号，(b, t)
        max_new_tokens, context_size (int): 最多再生成几个词元；模型一次最多看几个
        temperature (float): 0 表示贪心；小于 1 更保守，大于 1 更随意
        top_k (int 或 None): 只在分数最高的 k 个里选；None 表示不限制
        eos_id (int 或 None): 结束词元的编号，如 50256；None 表示写满 max_new_tokens 个

    形状:
        输入 (b, t) → 输出 (b, t + m)，m 是生成的个数

    返回:
        Tensor: 提示词连同新生成的词元；一批里先写完的行，后面填的都是结束词元

    异常:
        ValueError: temperature 为负，或 top_k 不在 1 到词表大小之间

    出处: 原书 5.3.3 节
    """
    if not temperature >= 0:  # 写成 not >=，连 nan 也挡住
        raise ValueError(f"温度不能是 {temperature}：0 表示贪心，越大越随意")
    if top_k is not None and not 1 <= top_k <= model.out_head.out_features:
        raise ValueError(f"top_k 应在 1 到 {model.out_head.out_features}（词表大小）之间，不能是 {top_k}")

    finished = torch.zeros(len(idx), 1, dtype=torch.bool, device=idx.device)  # (b, 1)　哪些行已经写完
    for _ in range(max_new_tokens):
        idx_cond = idx[:, -context_size:]  # (b, t)　太长时只留最近的 context_size 个
        with torch.no_grad():
            logits = model(idx_cond)  # (b, t, V)
        logits = logits[:, -1, :]  # (b, V)　只有最后一个位置是新问题

        # ① top-k：第 k 名以外的分数改成 -inf，softmax 之后概率正好是 0，再大的温度也轮不到它们。
        if top_k is not None:
            top_logits, _ = torch.topk(logits, top_k)  # (b, top_k)　从大到小
            min_val = top_logits[:, -1:]  # (b, 1)　每一行自己的门槛：第 k 名的分数
            logits = torch.where(logits < min_val, -torch.inf, logits)  # (b, V)

        if temperature > 0.0:
            # ② 温度：除以大于 1 的数，分数的差距缩小，分布变平，冷门的词元也有机会；除以小于 1 的数则相反。
            logits = logits / temperature
            # softmax 只看分数之差，减去最大值不改变结果；加上这一行，是为了 MPS 上也算出与 CPU 相同的概率。
            logits = logits - logits.max(dim=-1, keepdim=True).values  # (b, V)
            probs = torch.softmax(logits, dim=-1)  # (b, V)
            # ③ 按概率抽一个，而不是总选最大的：同一个提示词，每次可以写出不同的话。
            idx_next = torch.multinomial(probs, num_samples=1)  # (b, 1)
        else:
            idx_next = torch.argmax(logits, dim=-1, keepdim=True)  # (b, 1)

        # ④ 结束：写完的行不再写新词，只填结束词元，等着别的行；全都写完了才停。
        if eos_id is not None:
            idx_next = torch.where(finished, eos_id, idx_next)  # (b, 1)
            finished = idx_next == eos_id  # (b, 1)
            if finished.all():
                break
        idx = torch.cat((idx, idx_next), dim=1)  # (b, t + 1)
    return idx


def sample(seed):
    """同一个提示词，用一个种子抽一段话。

    参数:
        seed (int): 随机种子

    返回:
        Tensor: 提示词连同抽出的 15 个词元，(1, t + 15)
    """
    torch.manual_seed(seed)
    return generate(model, prompt, max_new_tokens=15, context_size=context_size, top_k=25, temperature=1.4)


print("\n【5.3.3】top_k 25，温度 1.4，换几个种子")
samples = {seed: sample(seed) for seed in (123, 1, 2)}
for seed, token_ids in samples.items():
    print(f"  种子 {seed:<3}　{token_ids_to_text(token_ids, tokenizer)!r}")

# %% 结束词元：一批两句，各写各的，写完的等着
# 真正的结束词元是 50256（<|endoftext|>），小模型训练时没有见过它，这里拿句号代替：写到句号就算写完。
period = tokenizer.encode(".")[0]
prompts = ["Every effort moves you", "She did not know"]  # 都是 4 个词元，才拼得成一批
pair = torch.cat([text_to_token_ids(text, tokenizer) for text in prompts])  # (2, t)
written = generate(model, pair, max_new_tokens=30, context_size=context_size, eos_id=period)  # (2, t + m)
print("\n写到句号为止")
for row in written:
    print(f"  {token_ids_to_text(row, tokenizer)!r}")

# %% 这个数字对吗？
print("\n这个数字对吗？")
intel_mac = "；Intel 芯片的 Mac 上，旧版 PyTorch 抽样用的是另一套随机数，对不上是正常的"
confirm(
    "argmax 与抽一次，都是 forward",
    torch.argmax(probas) == 3 and drawn == 3,
    "分数抄错了，或种子不是 123" + intel_mac,
)
book_counts = {
    1: [73, 0, 0, 582, 2, 0, 0, 343, 0],
    0.1: [0, 0, 0, 985, 0, 0, 0, 15, 0],
    5: [165, 75, 42, 239, 71, 46, 32, 227, 103],
}
for temperature, counts in book_counts.items():
    if temperature in sampled:
        claim = f"温度 {temperature} 的计数与原书相同：{', '.join(map(str, counts))}"
        confirm(claim, sampled[temperature] == counts, "乘了温度，而不是除以温度，或抽之前没有重新设种子" + intel_mac)
confirm(
    f"top-k 之后只剩 {top_k} 个非零的概率，总和为 1",
    (topk_probas > 0).sum() == top_k and abs(topk_probas.sum() - 1) < 1e-6,
    "门槛取错了名次，或用 0 代替了 -inf",
)
only_one = generate(model, prompt, 10, context_size, top_k=1, temperature=1.4)  # (1, t + 10)
zero = generate(model, prompt, 10, context_size, temperature=0.0)  # (1, t + 10)
first_10 = greedy[:, : prompt.shape[1] + 10]  # (1, t + 10)
confirm(
    "top_k=1 和温度 0 都等于贪心",
    torch.equal(only_one, first_10) and torch.equal(zero, first_10),
    "忘了 model.eval()，或 top-k 的门槛取错了名次",
)
confirm("种子相同，抽出来的话就相同", torch.equal(sample(123), samples[123]), "生成之前没有设种子，或 dropout 开着")
new_ids = written[:, pair.shape[1] :]  # (2, m)
after_period = (new_ids == period).cumsum(dim=1) > 0  # (2, m)　从每行第一个句号起
confirm("每行写到句号之后，只填句号", (new_ids[after_period] == period).all(), "写完的行又接着写了")

# %% 动手改
# 1. 把 TEMPERATURES 改成 [1, 0.01, 50]：0.01 时 1000 次全是 forward；50 时 9 个词各一百来次。
# 2. 把 softmax_with_temperature 里的除号改成乘号：温度 0.1 变平、温度 5 变尖，正好反过来，自查里两条变成 ✗。
# 3. 5.3.2 里，把 -torch.inf 改成 0.0：被挡掉的词概率还有 0.0007；再用温度 5，pizza 的概率反而从 0.0430 涨到 0.0632。
# 4. generate 里，把 torch.where(finished, eos_id, idx_next) 那一行删掉：先写完的一句不等了，接着往下写，自查里一条变成 ✗。
