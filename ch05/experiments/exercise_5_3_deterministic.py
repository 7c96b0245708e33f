"""第 5 章 · 练习 5.3　怎样让 generate 每次都写一样的话？

题目：　generate 会抽签。怎样设置，才能关掉随机，像 generate_text_simple 那样每次都写同一段？有几种办法？
先想：　温度 0、top_k=1、固定随机种子，三种办法都行吗？哪一种与 generate_text_simple 写的相同？（先想 10 秒，再运行）
解法：　① 每组设置换 5 个种子各写一遍，数不同的有几段；② 与 generate_text_simple 比，看是否逐个词元相同；③ 固定种子，写两遍。
学到：　关掉随机有两种：temperature=0（直接取第一名，不抽签），或 top_k=1（只剩一个可抽）；两种都等于 generate_text_simple。
　　　　固定种子只是"可以重来"，不是没有随机：种子、温度、提示词，变一样就变一段话。top_k=1 时温度多高都没用，第一名的概率总是 1。

运行：
    python ch05/experiments/exercise_5_3_deterministic.py           # 先训练：python ch05/main/gpt_train.py
    python ch05/experiments/exercise_5_3_deterministic.py --quick   # 只写 8 个词元
    约 13 秒，0.6 GB（2 核 CPU）

形状记号：　b 批大小　t 序列长度（词元数）　m 新写的词元数　d 嵌入维度　h 头数　k 每个头的维度　V 词表大小
"""

import argparse
import os
import sys
from pathlib import Path

import tiktoken
import torch
import torch.nn as nn

# 改这里
SETTINGS = {
    "温度 0": {"temperature": 0.0},
    "温度 0，top_k 25": {"temperature": 0.0, "top_k": 25},
    "top_k 1，温度 1": {"temperature": 1.0, "top_k": 1},
    "top_k 1，温度 100": {"temperature": 100.0, "top_k": 1},
    "温度 0.01": {"temperature": 0.01},  # 几乎是贪心：差 0.1 分，概率就差 e¹⁰ 倍
    "top_k 25，温度 1.4": {"temperature": 1.4, "top_k": 25},
}


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
    """每组设置换 5 个种子，数一数写出了几种，再与 generate_text_simple 比。"""
    parser = argparse.ArgumentParser(description="练习 5.3　怎样让 generate 每次都写一样的话")
    parser.add_argument("--quick", action="store_true", help="只写 8 个词元")
    new_tokens = 8 if parser.parse_args().quick else 20

    path = find_data("gpt_mini.pth")
    ckpt = torch.load(path, map_location="cpu", weights_only=True)
    model = GPTModel(ckpt["config"])
    model.load_state_dict(ckpt["model"])
    model.eval()
    tokenizer = tiktoken.get_encoding("gpt2")
    idx, context_size = text_to_token_ids("Every effort moves you", tokenizer), ckpt["config"]["context_length"]  # (1, t)
    greedy = generate_text_simple(model, idx, new_tokens, context_size)  # (1, t + m)
    print(f"模型　{path}\n贪心　{token_ids_to_text(greedy, tokenizer)!r}")

    print("\n①② 换 5 个种子")
    certain = True  # 温度 0 或 top_k 1 的几组，是不是都只写出贪心的那一段
    for title, setting in SETTINGS.items():
        texts = set()
        for seed in range(5):
            torch.manual_seed(seed)
            texts.add(tuple(generate(model, idx, new_tokens, context_size, **setting)[0].tolist()))
        same = texts == {tuple(greedy[0].tolist())}
        print(f"  {title:<18}　写出 {len(texts)} 种　{'与' if same else '不都与'} generate_text_simple 相同")
        if setting["temperature"] == 0 or setting.get("top_k") == 1:
            certain = certain and same

    print("\n③ 固定种子")
    again = []
    for _ in range(2):
        torch.manual_seed(123)
        again.append(generate(model, idx, new_tokens, context_size, temperature=1.4, top_k=25))  # (1, t + m)
    twice, plain = ("相同" if torch.equal(again[0], other) else "不同" for other in (again[1], greedy))
    print(f"  种子 123，温度 1.4，写两遍：{twice}；与贪心{plain}")

    print("\n这个数字对吗？")
    hint = "忘了 model.eval()，top-k 的门槛取错了名次，或温度 0 时还在抽签"
    confirm("温度 0 或 top_k=1：5 个种子只写出 1 种，与 generate_text_simple 逐个词元相同", certain, hint)
    confirm("固定种子，写两遍相同", torch.equal(*again), "两遍之间没有重新设种子")


if __name__ == "__main__":
    main()
