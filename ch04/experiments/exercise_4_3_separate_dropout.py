"""第 4 章 · 练习 4.3　三处 dropout，各用各的丢弃率

题目：　GPTModel 里三处 dropout（嵌入之后、注意力权重、残差之前）共用一个 drop_rate。把它拆成三个键，让三处可以各设各的。
先想：　要改哪几个类？MultiHeadAttention 要改吗？三处都取 0.1 时，结果应当与原来相同吗？（先想 10 秒，再运行）
解法：　① 配置里换成 drop_rate_emb、drop_rate_attn、drop_rate_shortcut；② 改 TransformerBlock 和 GPTModel 里读配置的三行；
        ③ 每次只开一处，量输出抖动得多厉害，证明三个键真的各管各的。
动手改：1. --rate 0.5：抖动都变大了。按倍数算，谁变得最多？（注意力和残差都约 2.9 倍，嵌入 2.3 倍）
        2. 把 TransformerBlock 里的 drop_rate_shortcut 改成 drop_rate_emb（抄错键）：程序照样跑，
           但"只开嵌入"和"只开残差"两行变了，有两条自查变成 ✗。

运行：
    python ch04/experiments/exercise_4_3_separate_dropout.py
    python ch04/experiments/exercise_4_3_separate_dropout.py --rate 0.5
    python setup/copy_forward.py diff ch04/experiments/exercise_4_3_separate_dropout.py    # 看改了哪三行
    约 2 秒，0.3 GB（2 核 CPU）

形状记号：b 批大小　t 序列长度　d 嵌入维度　V 词表大小
"""

import argparse

import torch
import torch.nn as nn

KEYS = {"drop_rate_emb": "嵌入", "drop_rate_attn": "注意力", "drop_rate_shortcut": "残差"}
# 小模型就够：看的是 dropout 开在哪里，与规模无关。
BASE = {"vocab_size": 100, "context_length": 16, "emb_dim": 48, "n_heads": 4, "n_layers": 3, "qkv_bias": False}


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


# region 沿用 ch04/main: LayerNorm, GELU, FeedForward
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


# region 改写 ch04/main: TransformerBlock, GPTModel
class TransformerBlock(nn.Module):
    """Transformer 块，注意力和残差的丢弃率分开。（原版详解见 ch04/main/example_05_transformer_block.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.att = MultiHeadAttention(
            d_in=cfg["emb_dim"],
            d_out=cfg["emb_dim"],
            context_length=cfg["context_length"],
            num_heads=cfg["n_heads"],
            dropout=cfg["drop_rate_attn"],  # 改：注意力权重用自己的键；MultiHeadAttention 本来就收一个数，不用改
            qkv_bias=cfg["qkv_bias"],
        )
        self.ff = FeedForward(cfg)
        self.norm1 = LayerNorm(cfg["emb_dim"])
        self.norm2 = LayerNorm(cfg["emb_dim"])
        self.drop_shortcut = nn.Dropout(cfg["drop_rate_shortcut"])  # 改：残差用自己的键；每块里用两次（注意力之后、前馈之后）

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
    """GPT，嵌入的丢弃率分开。（原版详解见 ch04/main/example_06_gpt_model.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate_emb"])  # 改：嵌入用自己的键
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


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def jitter(rates):
    """同一个模型、同一句话放 100 遍凑成一批，训练模式下前向，看 100 份输出相差多大。

    参数:
        rates (dict): 三个键 → 丢弃率

    返回:
        tuple[float, GPTModel]: logits 的标准差（对各个位置平均），和这个模型
    """
    torch.manual_seed(123)
    model = GPTModel(BASE | rates)
    idx = torch.randint(BASE["vocab_size"], (1, BASE["context_length"]))  # (1, t)
    with torch.no_grad():
        outputs = model(idx.expand(100, -1))  # (b, t, V)　dropout 对批里每一份各抽各的，没有 dropout 就应当份份相同
    return outputs.std(dim=0).mean().item(), model


def main():
    """每次只开一处 dropout，量抖动。"""
    parser = argparse.ArgumentParser(description="练习 4.3　三处 dropout 分开设")
    parser.add_argument("--rate", type=float, default=0.1, help="打开的那一处丢多少，0.01 到 0.9（默认：0.1）")
    rate = parser.parse_args().rate
    if not 0.01 <= rate <= 0.9:
        parser.error(f"--rate 应在 0.01 到 0.9 之间，不能是 {rate}")

    print("① 各处的丢弃率（从建好的模型里读出来）　② 同一句话放 100 遍，logits 抖动的标准差")
    spreads = {}
    settings = {"全关": [], **{f"只开{name}": [key] for key, name in KEYS.items()}, "全开": list(KEYS)}
    right_place = True
    for title, opened in settings.items():
        rates = {key: rate if key in opened else 0.0 for key in KEYS}
        spreads[title], model = jitter(rates)
        found = {
            "drop_rate_emb": {model.drop_emb.p},
            "drop_rate_attn": {block.att.dropout.p for block in model.trf_blocks},
            "drop_rate_shortcut": {block.drop_shortcut.p for block in model.trf_blocks},
        }
        right_place = right_place and all(found[key] == {rates[key]} for key in KEYS)
        shown = "　".join(f"{name} {'/'.join(map(str, found[key]))}" for key, name in KEYS.items())
        print(f"  {title.ljust(5, '　')}　{shown}　抖动 {spreads[title]:.4f}")
    model.eval()
    idx = torch.zeros(1, 4, dtype=torch.long)
    quiet = torch.equal(model(idx), model(idx))

    print("\n这个数字对吗？")
    confirm("每个键都到了该到的地方", right_place, "TransformerBlock 或 GPTModel 里读错了键")
    confirm("全关时不抖", spreads["全关"] < 1e-6, "还有一处 dropout 没接上这三个键")
    single = [spreads[f"只开{name}"] for name in KEYS.values()]
    confirm("只开一处都会抖，全开抖得比任何一处都厉害", 1e-6 < min(single) and max(single) < spreads["全开"], "有一个键没有接上")
    confirm("评估模式下，全开也不抖", quiet, "用了 F.dropout 却没有传 training")

    print("\n学到什么")
    print("  改的只有读配置的三行：组件把丢弃率当参数收，外面才拆得开。把常数写死在类里，这道题就要改四个类。")
    print("  参数和建层的次序没变，三处都取 0.1 时，同一个种子的结果与原来的 GPTModel 逐位相同，旧的权重也照样能读。")
    print("  没训练过的模型里，嵌入那一处抖得最厉害：它直接丢主路上的数，而各块加上去的修改量还很小；注意力那一处最小，丢的只是「看谁」的一部分。")


if __name__ == "__main__":
    main()
