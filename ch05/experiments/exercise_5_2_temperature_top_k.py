"""第 5 章 · 练习 5.2　温度和 top-k，什么时候调高，什么时候调低？

题目：　换几组温度和 top-k 各写一些，看看效果。什么场合该用低温度、小 k？什么场合该用高温度、大 k？
先想：　温度 5、不限 top-k，与温度 5、top-k 25，差别大吗？哪一个更像人话？（先想 10 秒，再运行）
解法：　① 同一个提示词，每组设置写 10 段；② 数三样：不同的有几段，段里自己重复的有多少，选中的词元在模型看来有多可能；③ 读几段。
学到：　低温度、小 k：词元都是模型有把握的，每次差不多，适合查事实、写代码、分类；高温度、大 k：每次都不同，适合起名、编故事、出主意。
　　　　温度高了一定要配 top-k：五万个词元里冷门的加起来概率不小，只要抽中一个，后面就都跟着跑偏。

运行：
    python ch05/experiments/exercise_5_2_temperature_top_k.py           # 先训练：python ch05/main/gpt_train.py
    python ch05/experiments/exercise_5_2_temperature_top_k.py --quick   # 每组只写 4 段
    约 10 秒，0.6 GB（2 核 CPU）

形状记号：　n 段数　m 新写的词元数　b 批大小　t 序列长度（词元数）　d 嵌入维度　h 头数　k 每个头的维度　V 词表大小
"""

import argparse
import os
import sys
from pathlib import Path

import tiktoken
import torch
import torch.nn as nn

# 改这里
PROMPT = "Every effort moves you"
NEW_TOKENS = 20
# 贪心；保守；原样；原书 5.3.3 节的设置；很热，但只在前 25 名里选；很热，不限制。
SETTINGS = [(0.0, None), (0.5, None), (1.0, None), (1.4, 25), (5.0, 25), (5.0, None)]


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


# region 沿用 ch05/main: text_to_token_ids, token_ids_to_text, generate
def text_to_token_ids(text, tokenizer):
    """文本 → 模型的输入，(1, t) 的词元编号。（详解见 ch05/main/example_01_loss.py）"""
    encoded = tokenizer.encode(text, allowed_special={"<|endoftext|>"})
    return torch.tensor(encoded).unsqueeze(0)  # (1, t)


def token_ids_to_text(token_ids, tokenizer):
    """模型的输出 → 文本。（详解见 ch05/main/example_01_loss.py）"""
    return tokenizer.decode(token_ids.squeeze(0).tolist())


def generate(model, idx, max_new_tokens, context_size, temperature=0.0, top_k=None, eos_id=None):
    """逐个生成词元，可以调温度、限制 top-k，遇到结束词元就停。（详解见 ch05/main/example_03_decoding.py）"""
    if not temperature >= 0:
        raise ValueError(f"温度不能是 {temperature}：0 表示贪心，越大越随意")
    if top_k is not None and not 1 <= top_k <= model.out_head.out_features:
        raise ValueError(f"top_k 应在 1 到 {model.out_head.out_features}（词表大小）之间，不能是 {top_k}")
    finished = torch.zeros(len(idx), 1, dtype=torch.bool, device=idx.device)  # (b, 1)
    for _ in range(max_new_tokens):
        idx_cond = idx[:, -context_size:]  # (b, t)
        with torch.no_grad():
            logits = model(idx_cond)  # (b, t, V)
        logits = logits[:, -1, :]  # (b, V)
        if top_k is not None:
            top_logits, _ = torch.topk(logits, top_k)  # (b, top_k)
            min_val = top_logits[:, -1:]  # (b, 1)
            logits = torch.where(logits < min_val, -torch.inf, logits)  # (b, V)
        if temperature > 0.0:
            logits = logits / temperature
            logits = logits - logits.max(dim=-1, keepdim=True).values  # (b, V)
            probs = torch.softmax(logits, dim=-1)  # (b, V)
            idx_next = torch.multinomial(probs, num_samples=1)  # (b, 1)
        else:
            idx_next = torch.argmax(logits, dim=-1, keepdim=True)  # (b, 1)
        if eos_id is not None:
            idx_next = torch.where(finished, eos_id, idx_next)  # (b, 1)
            finished = idx_next == eos_id  # (b, 1)
            if finished.all():
                break
        idx = torch.cat((idx, idx_next), dim=1)  # (b, t + 1)
    return idx


# endregion


def write(model, idx, n, context_size, temperature, top_k):
    """用一组设置写 n 段，量三样东西。

    参数:
        model (nn.Module): 语言模型
        idx (Tensor): 提示词，(1, t)
        n (int): 写几段
        context_size (int): 上下文长度
        temperature (float): 温度
        top_k (int 或 None): top-k

    返回:
        tuple: 新写的词元 (n, m)、不同的有几段、重复的比例、选中的词元的概率（几何平均）
    """
    torch.manual_seed(123)
    t = idx.shape[1]
    out = generate(model, idx.repeat(n, 1), NEW_TOKENS, context_size, temperature, top_k)  # (n, t + m)　n 段当一批，一次写完
    new = out[:, t:]  # (n, m)
    pairs = [[tuple(row[i : i + 2]) for i in range(NEW_TOKENS - 1)] for row in new.tolist()]
    repeated = sum(1 - len(set(row)) / len(row) for row in pairs) / n  # 相邻两个词元，这一段里前面出现过的，占多少
    with torch.no_grad():
        log_probas = torch.log_softmax(model(out[:, :-1])[:, t - 1 :], dim=-1)  # (n, m, V)
    chosen = log_probas.gather(-1, new.unsqueeze(-1))  # (n, m, 1)　每个选中的词元，模型原来（温度 1）给它的对数概率
    return new, len(set(map(tuple, new.tolist()))), repeated, chosen.mean().exp().item()


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
    """六组设置各写几段，量三样东西，再读两段。"""
    parser = argparse.ArgumentParser(description="练习 5.2　温度和 top-k")
    parser.add_argument("--quick", action="store_true", help="每组只写 4 段")
    n = 4 if parser.parse_args().quick else 10

    path = find_data("gpt_mini.pth")
    ckpt = torch.load(path, map_location="cpu", weights_only=True)
    model = GPTModel(ckpt["config"])
    model.load_state_dict(ckpt["model"])
    model.eval()
    tokenizer = tiktoken.get_encoding("gpt2")
    idx = text_to_token_ids(PROMPT, tokenizer)  # (1, t)

    print(f"模型　{path}\n\n①② 每组写 {n} 段，每段 {NEW_TOKENS} 个词元；③ 读其中两段")
    distinct, probability = {}, {}
    for setting in SETTINGS:
        temperature, top_k = setting
        new, distinct[setting], repeated, probability[setting] = write(model, idx, n, ckpt["config"]["context_length"], temperature, top_k)
        title = f"温度 {temperature}　top-k {top_k or '不限'}"
        print(f"\n  {title}　不同的 {distinct[setting]} 段　重复 {repeated:.0%}　选中的概率 {probability[setting]:.1e}")
        for row in new[:2]:
            print(f"    {token_ids_to_text(row, tokenizer)!r}")
    ratio = probability[5.0, 25] / probability[5.0, None]
    print(f"\n温度都是 5，加上 top-k 25，选中的词元可能性高了 {ratio:,.0f} 倍。哪几组你会用来查事实，哪几组用来起名字？")

    print("\n这个数字对吗？")
    confirm("贪心只写得出 1 段", distinct[0.0, None] == 1, "忘了 model.eval()，dropout 开着")
    colder = probability[0.5, None] > probability[1.0, None] > probability[5.0, None]
    confirm("温度越高，选中的词元越冷门：0.5 > 1 > 5", colder, "乘了温度，而不是除以温度")
    confirm("同样是温度 5，top-k 25 把概率拉了回来", ratio > 1, "top-k 没有挡住冷门的词元")
    confirm("温度 5、不限 top-k，每一段都不同", distinct[5.0, None] == n, "每一段用了同样的随机数")


if __name__ == "__main__":
    main()
