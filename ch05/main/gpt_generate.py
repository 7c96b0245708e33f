"""第 5 章 · 5.3–5.5 节　让训练好的模型、让真正的 GPT-2 说话

读完、敲完这个脚本，你应该能不看书回答：
    1. 贪心解码每次都选最可能的词元，为什么反而容易翻来覆去说同一句话？
    2. 温度（temperature）除在哪里？top-k 挡住了什么？它们为什么常常一起用？
    3. 读回一个训练好的模型，要哪三行？

运行：
    python ch05/main/gpt_generate.py                                            # 贪心；先训练：python ch05/main/gpt_train.py
    python ch05/main/gpt_generate.py --temperature 1.4 --top-k 25               # 原书 5.3.3 节的设置
    python ch05/main/gpt_generate.py --size 124M --temperature 1.5 --top-k 50   # 原书 5.5 节；先转换：gpt_download.py
    mini 约 3 秒，0.4 GB；124M 约 8 秒，1.5 GB（2 核 CPU）

形状记号（全书统一）：b 批大小　t 序列长度（词元数）　d 嵌入维度　h 头数　k 每个头的维度　V 词表大小
"""

import argparse
import os
import sys
from pathlib import Path

import tiktoken
import torch
import torch.nn as nn

# 改这里：都可以用命令行改，如 --top-k 25
PROMPT = "Every effort moves you"
MAX_NEW_TOKENS = 25
TEMPERATURE = 0.0  # 0 是贪心；1 是照模型的概率抽；越大越随意
TOP_K = None  # 只在分数最高的几个词元里选；None 是不限制
SEED = 123  # 温度不为 0 时，换一个就换一段话
SIZES = ["mini", "124M", "355M", "774M", "1558M"]


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


# region 沿用 ch05/main: text_to_token_ids, token_ids_to_text
def text_to_token_ids(text, tokenizer):
    """文本 → 模型的输入，(1, t) 的词元编号。（详解见 ch05/main/example_01_loss.py）"""
    encoded = tokenizer.encode(text, allowed_special={"<|endoftext|>"})
    return torch.tensor(encoded).unsqueeze(0)  # (1, t)


def token_ids_to_text(token_ids, tokenizer):
    """模型的输出 → 文本。（详解见 ch05/main/example_01_loss.py）"""
    return tokenizer.decode(token_ids.squeeze(0).tolist())


# endregion


# region 沿用（含注释） ch05/main: generate
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
    """读回模型，按给定的解码策略写一段。"""
    parser = argparse.ArgumentParser(description="5.3–5.5 节　用训练好的模型生成文本")
    parser.add_argument("--prompt", default=PROMPT, help=f"提示词（默认：{PROMPT}）")
    parser.add_argument("--max-new-tokens", type=int, default=MAX_NEW_TOKENS, help=f"最多生成几个词元（默认：{MAX_NEW_TOKENS}）")
    parser.add_argument("--temperature", type=float, default=TEMPERATURE, help=f"温度，0 表示贪心（默认：{TEMPERATURE}）")
    parser.add_argument("--top-k", type=int, default=TOP_K, help=f"只在分数最高的几个词元里选（默认：{TOP_K or '不限制'}）")
    parser.add_argument("--seed", type=int, default=SEED, help=f"随机种子（默认：{SEED}）")
    parser.add_argument("--size", default="mini", choices=SIZES, help="mini 是自己训练的（默认），其余是 OpenAI 的")
    parser.add_argument("--from-file", type=Path, help="用这个 .pth，如自己训练的 ch05/outputs/gpt_124M.pth")
    args = parser.parse_args()

    # 读回一个模型只要三行：读文件，照配置建出一样的结构，填进同样的权重。
    path = args.from_file or find_data("gpt_mini.pth" if args.size == "mini" else f"gpt2-{args.size}.pth")
    try:
        ckpt = torch.load(path, map_location="cpu", weights_only=True)  # weights_only：只读数，不执行文件里夹带的代码
        model = GPTModel(ckpt["config"])
        # torch.compile 过的模型，存下的名字前面多 _orig_mod.；多卡训练的多 module.：去掉就一样了。
        weights = {name.replace("_orig_mod.", "").replace("module.", ""): tensor for name, tensor in ckpt["model"].items()}
        model.load_state_dict(weights)
    except Exception:  # 不存在的、损坏的、别人的文件，能引出各种异常
        parser.error(f"{path} 读不出来：要 gpt_train.py 或 gpt_download.py 存的 .pth；别处来的先用 gpt_download.py 转换")
    if extra := [word for word in ("_orig_mod.", "module.") if any(word in name for name in ckpt["model"])]:
        print(f"名字里多出来的 {'、'.join(extra)} 去掉了")
    if bad := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        parser.error(f"{path} 里的 {bad[0]} 有 nan 或 inf，一个就会传染给所有的数，请换一个文件")
    model.eval()  # 关掉 dropout，不然同一句话每次算出的概率都不同
    context_size = ckpt["config"]["context_length"]

    tokenizer = tiktoken.get_encoding("gpt2")
    try:
        idx = text_to_token_ids(args.prompt or "<|endoftext|>", tokenizer)  # (1, t)　没有提示词，就从头写一篇
        torch.manual_seed(args.seed)
        out = generate(model, idx, args.max_new_tokens, context_size, args.temperature, args.top_k, eos_id=50256)  # (1, t + m)
    except ValueError as error:
        parser.error(str(error))
    written = token_ids_to_text(out, tokenizer)
    strategy = "贪心" if args.temperature == 0 else f"温度 {args.temperature}，top-k {args.top_k or '不限'}"
    print(f"模型　{path}\n配置　{ckpt['config']}\n策略　{strategy}\n\n{written}")

    print("\n这个数字对吗？")
    greedy = generate(model, idx, 8, context_size)  # (1, t + 8)
    first = generate(model, idx, 8, context_size, temperature=1.0, top_k=1)  # (1, t + 8)
    confirm("top_k=1 就是贪心：只剩第一名，温度再高也只能选它", torch.equal(greedy, first), "top-k 的门槛取错了名次")
    confirm("输出以提示词开头", torch.equal(out[:, : idx.shape[1]], idx), "拼接的次序反了")
    asked = (args.prompt, args.max_new_tokens, args.temperature, args.top_k, args.seed)
    openai = abs(model.tok_emb.weight[-1, -1].item() - 0.12067825) < 1e-6  # OpenAI 的 124M 才有这个数；只有它，才与书比
    if openai and asked == ("Every effort moves you", 25, 1.5, 50, 123):  # 原书 5.5 节的设置
        book = "Every effort moves you toward finding an ideal new way to practice something!\n\nWhat makes us want to be on top of that?"
        confirm("与原书 5.5 节写的一字不差", written == book, "某个权重装错了地方，或忘了转置")


if __name__ == "__main__":
    main()
