"""第 5 章 · 练习 5.2　温度和 top-k，什么时候调高，什么时候调低？

题目：　换几组温度和 top-k 各写一些，看看效果。什么场合该用低温度、小 k？什么场合该用高温度、大 k？
先想：　温度 5、不限 top-k，与温度 5、top-k 25，差别大吗？哪一个更像人话？（先想 10 秒，再运行）
解法：　① 同一个提示词，每组设置写 10 段；② 数三样：不同的有几段，段里自己重复的有多少，选中的词元在模型看来有多可能；③ 读几段。
学到：　低温度、小 k：词元都是模型有把握的，每次差不多，适合查事实、写代码、分类；高温度、大 k：每次都不同，适合起名、编故事、出主意。
　　　　温度高了一定要配 top-k：五万个词元里冷门的加起来概率不小，只要抽中一个，后面就都跟着跑偏。

运行：
    python ch05/experiments/exercise_5_2_temperature_top_k.py           # 有 ch05/outputs/gpt_mini.pth 就用它，没有就当场训练一个小的
    python ch05/experiments/exercise_5_2_temperature_top_k.py --quick   # 每组只写 4 段
    约 10 秒，0.6 GB（2 核 CPU）；当场训练再加 7 秒

形状记号：　n 段数　　m 新写的词元数　　b 批大小　　t 序列长度（token 数）　　d 嵌入维度　　h 头数　　k 每个头的维度　　V 词表大小
"""

import argparse
import os
import sys
import warnings
from pathlib import Path

import tiktoken
import torch
import torch.nn as nn

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
# 贪心；保守；原样；原书 5.3.3 节的设置；很热，但只在前 25 名里选；很热，不限制。
SETTINGS = [(0.0, None), (0.5, None), (1.0, None), (1.4, 25), (5.0, 25), (5.0, None)]
NEW_TOKENS = 20


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


# region 沿用 ch05/main/gpt_generate.py: generate
def generate(model, idx, max_new_tokens, context_size, temperature=0.0, top_k=None, eos_id=None):
    """逐个生成词元，可以调温度、限制 top-k，遇到结束符就停。（详解见 ch05/main/gpt_generate.py）"""
    if not temperature >= 0:
        raise ValueError(f"温度不能是负数（{temperature}）：0 表示贪心，越大越随机")
    vocab_size = model.out_head.out_features
    if top_k is not None and not 1 <= top_k <= vocab_size:
        raise ValueError(f"top_k 应在 1 到 {vocab_size}（词表大小）之间，不能是 {top_k}；不想限制就不要给")
    for _ in range(max_new_tokens):
        idx_cond = idx[:, -context_size:]  # (b, t)
        with torch.no_grad():
            logits = model(idx_cond)[:, -1, :]  # (b, V)
        if top_k is not None:
            kth = torch.topk(logits, top_k).values[:, -1:]  # (b, 1)
            logits = torch.where(logits < kth, -torch.inf, logits)  # (b, V)
        if temperature > 0.0:
            logits = logits / temperature
            logits = logits - logits.max(dim=-1, keepdim=True).values
            probs = torch.softmax(logits, dim=-1)  # (b, V)
            idx_next = torch.multinomial(probs, num_samples=1)  # (b, 1)
        else:
            idx_next = torch.argmax(logits, dim=-1, keepdim=True)  # (b, 1)
        if eos_id is not None and (idx_next == eos_id).all():
            break
        idx = torch.cat((idx, idx_next), dim=1)  # (b, t + 1)
    return idx


# endregion


# region 沿用 ch05/main/gpt_train.py: text_to_token_ids, token_ids_to_text, load_checkpoint
def text_to_token_ids(text, tokenizer):
    """文本 → 模型的输入。（详解见 ch05/main/gpt_train.py）"""
    encoded = tokenizer.encode(text, allowed_special={"<|endoftext|>"})
    return torch.tensor(encoded).unsqueeze(0)  # (1, t)


def token_ids_to_text(token_ids, tokenizer):
    """模型的输出 → 文本。（详解见 ch05/main/gpt_train.py）"""
    return tokenizer.decode(token_ids.squeeze(0).tolist())


def load_checkpoint(path):
    """读检查点。（详解见 ch05/main/gpt_train.py）"""
    if not path.is_file():
        raise ValueError(f"找不到检查点 {path}，请先运行 python ch05/main/gpt_train.py")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        raise ValueError(f"{path} 读不出来：文件已损坏，或者不是检查点") from None
    if not isinstance(content, dict) or not {"config", "seed", "text", "initial", "model", "optimizer", "progress"} <= content.keys():
        raise ValueError(f"{path} 不是 gpt_train.py 存的检查点，里面缺了配置、权重、优化器或进度")
    return content


# endregion


def trained_model(checkpoint, steps=60):
    """得到一个训练过的模型：有 gpt_train.py 的检查点就用，没有就当场训练一个小的。

    参数:
        checkpoint (Path): 检查点，多半是 ch05/outputs/gpt_mini.pth
        steps (int): 当场训练的话，训练几步

    返回:
        tuple[GPTModel, dict, str]: 模型（已经 eval）、配置、它的来历
    """
    try:
        content = load_checkpoint(checkpoint)
        model = GPTModel(content["config"])
        model.load_state_dict(content["model"])
        return model.eval(), content["config"], f"gpt_train.py 训练的 {checkpoint}"
    except (ValueError, RuntimeError, KeyError, TypeError):  # 还没训练过，或文件不是它存的
        pass
    config = {"vocab_size": 50257, "context_length": 64, "emb_dim": 64, "n_heads": 2, "n_layers": 2, "drop_rate": 0.0, "qkv_bias": False}
    path = find_data("the-verdict.txt", "story-en.txt")
    # 只背开头的 1000 个词元，几秒钟就能成句；真正的训练见 gpt_train.py。
    ids = text_to_token_ids(read_text(path), tiktoken.get_encoding("gpt2"))[0, :1000]  # (n,)
    torch.manual_seed(123)
    model = GPTModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(steps):
        batch = ids.unfold(0, 65, 1)[torch.randint(len(ids) - 64, (2,))]  # (b, t + 1)　随机取两段，输入和目标错开一位
        optimizer.zero_grad()
        logits = model(batch[:, :-1])  # (b, t, V)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        optimizer.step()
    return model.eval(), config, f"当场用 {path.name} 的开头训练了 {steps} 步的小模型，损失 {loss.item():.2f}（先运行 python ch05/main/gpt_train.py，就换成 mini）"


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


# region 沿用 setup/find_data.py: find_data, read_text
def find_data(*names):
    """到几个数据文件夹里依次找，返回找到的第一个；都没有，就说先运行哪条命令，退出码 2。（详解见 setup/find_data.py）"""
    here = Path(__file__ if "__file__" in globals() else "x").resolve()
    root = next((folder for folder in here.parents if (folder / "setup" / "data").is_dir()), Path())
    for folder in [os.environ.get("LLM_DATA_DIR"), root / "setup" / "downloads", root / "setup" / "data", root / "ch05" / "outputs"]:
        for name in names:
            if folder and (Path(folder) / name).exists():
                return Path(folder) / name
    commands = {"tiktoken": "setup/prepare.py", "gpt_mini.pth": "ch05/main/gpt_train.py（约 90 秒）", "gpt2-124M.pth": "ch05/main/gpt_download.py"}
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


def main():
    """六组设置各写几段，量三样东西，再读两段。"""
    parser = argparse.ArgumentParser(description="练习 5.2　温度和 top-k")
    parser.add_argument("--prompt", default="Every effort moves you", help="提示词（默认：Every effort moves you）")
    parser.add_argument("--quick", action="store_true", help="每组只写 4 段")
    args = parser.parse_args()
    n = 4 if args.quick else 10
    try:
        model, config, origin = trained_model(OUTPUTS / "gpt_mini.pth", steps=20 if args.quick else 60)
        tokenizer = tiktoken.get_encoding("gpt2")
        idx = text_to_token_ids(args.prompt, tokenizer)  # (1, t)
        most = config["context_length"] - NEW_TOKENS
        if not 1 <= idx.shape[1] <= most:
            raise ValueError(f"提示词有 {idx.shape[1]} 个词元，应在 1 到 {most} 之间（要留出新写的 {NEW_TOKENS} 个）")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"模型　{origin}")
    print(f"\n①② 每组写 {n} 段，每段 {NEW_TOKENS} 个词元")
    distinct, probability = {}, {}
    for temperature, top_k in SETTINGS:
        new, distinct[temperature, top_k], repeated, probability[temperature, top_k] = write(model, idx, n, config["context_length"], temperature, top_k)
        title = f"温度 {temperature}　top-k {top_k or '不限'}"
        print(f"\n  {title}　不同的 {distinct[temperature, top_k]} 段　重复 {repeated:.0%}　选中的概率 {probability[temperature, top_k]:.1e}")
        for row in new[:2]:  # 读两段
            print(f"    {token_ids_to_text(row, tokenizer)!r}")

    print("\n③ 怎么选：要准、要能重复（查事实、写代码、分类），温度 0 到 0.5；要新鲜（起名、编故事、出主意），温度 1 到 1.5，配 top-k")

    print("\n这个数字对吗？")
    confirm("贪心只写得出 1 段", distinct[0.0, None] == 1, "忘了 model.eval()，dropout 开着")
    confirm("温度越高，选中的词元越冷门：0.5 > 1 > 5", probability[0.5, None] > probability[1.0, None] > probability[5.0, None], "乘了温度，而不是除以温度")
    confirm("同样是温度 5，top-k 25 把概率拉了回来", probability[5.0, 25] > probability[5.0, None], "top-k 没有挡住冷门的词元")
    confirm("温度 5、不限 top-k，每一段都不同", distinct[5.0, None] == n, "每一段用了同样的随机数")


if __name__ == "__main__":
    main()
