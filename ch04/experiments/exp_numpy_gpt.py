"""第 4 章 · 实验　不用 PyTorch，只用 NumPy 写出整个 GPT-2

问题：　PyTorch 做的事，有哪些是 GPT-2 生成文本真正需要的？只用 NumPy，写得出来吗？会慢多少？
先猜：　前向传播一共要几种运算？NumPy 版生成一个词元，比 PyTorch 慢几倍？（先想 10 秒，再运行）
看点：　① 整个前向传播只有五种运算：查表、矩阵乘法、层归一化、softmax、GELU；② 每一步的 logits 都与 gpt.py 相同；
        ③ 第一个词元出来时，PyTorch 还没开始导入；④ 文件用内存映射打开，500 MB 几乎不用等。
动手改：1. 把 gelu 里的 tanh 近似换成 np.maximum(x, 0)（ReLU）：程序照样跑，logits 对不上了，自查变成 ✗。
        2. 把 self.length += t 那一行去掉：每个词元都以为自己在开头，缓存被反复盖掉，从第二个词元起对不上。
        3. 把 gelu 里的 math.sqrt 换成 np.sqrt：NumPy 2 里它是 float64，会把后面的一切都悄悄变成 float64，慢很多。

运行：
    python ch04/experiments/exp_numpy_gpt.py                               # 权重是随机数，形状是 124M 的
    python ch04/experiments/exp_numpy_gpt.py --weights setup/downloads/gpt2-124M.safetensors    # OpenAI 的，先运行 python setup/download.py gpt2-124M
    python ch04/experiments/exp_numpy_gpt.py --quick
    约 15 秒，2.0 GB（2 核 CPU）

形状记号：t 这一次送进来几个词元　s 连同缓存一共几个　d 嵌入维度　h 头数　k 每个头的维度　V 词表大小　b 批大小
"""

import time

START = time.perf_counter()  # 从这里开始计时，连导入也算

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):  # 两边都只用一个核，比的才是同一件事；要在导入之前定
    os.environ.setdefault(name, "1")

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path

import numpy as np
import tiktoken

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
HEAD_DIM = 64  # 权重文件里没有头数；GPT-2 的四种规模，每个头都是 64 维
SIZES = {"124M": (768, 12), "mini": (192, 4)}  # d、层数
DTYPES = {"F32": np.float32, "F16": np.float16}


def open_safetensors(path):
    """用内存映射打开一个 safetensors 文件：只读目录，数用到哪里才读到哪里。

    格式很简单：8 个字节写着目录有多长，接着是 JSON 的目录（每个张量的类型、形状、从第几个字节到第几个字节），然后全是数。

    参数:
        path (Path): 文件

    返回:
        dict: 名字 → 数组；float32 的直接指着文件，没有复制

    异常:
        ValueError: 没有这个文件、不是这种格式，或被截短了
    """
    if not Path(path).is_file():
        raise ValueError(f"找不到权重文件 {path}，请检查路径")
    try:
        raw = np.memmap(path, np.uint8, mode="r")
        size = int(raw[:8].view("<u8")[0])
        header = json.loads(bytes(raw[8 : 8 + size]))
        entries = {name: (entry["dtype"], entry["shape"], *entry["data_offsets"]) for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, IndexError, KeyError, TypeError, AttributeError):  # 空的、截短的、别的格式，各有各的错法
        raise ValueError(f"{path} 读不出来：不是 safetensors 文件，或没有下载完整") from None
    data, arrays = raw[8 + size :], {}
    if max((end for *_, end in entries.values()), default=0) != len(data):
        raise ValueError(f"{path} 不完整：目录说有 {max((end for *_, end in entries.values()), default=0):,} 字节的数，实际只有 {len(data):,} 字节，请重新下载")
    for name, (dtype, shape, begin, end) in entries.items():
        if dtype not in DTYPES:
            continue  # 因果掩码之类的不是权重；真少了什么，check_weights 会说
        # np.asarray 去掉 memmap 这层外壳，运算才不会每次多绕一圈；数据仍是映射的，没有读进来。
        array = np.asarray(data[begin:end]).view(DTYPES[dtype]).reshape(shape)  # (…)　形状写在目录里
        arrays[name.removeprefix("transformer.")] = array if dtype == "F32" else array.astype(np.float32)
    return arrays


def gpt2_shapes(d, layers, vocab=50257, context=1024):
    """GPT-2 的权重文件里应有的名字和形状。

    参数:
        d, layers, vocab, context (int): 嵌入维度、层数、词表大小、上下文长度

    返回:
        dict: 名字 → 形状；权重是（输入，输出），算 x @ w + b，与 nn.Linear 正好转置
    """
    shapes = {"wte.weight": (vocab, d), "wpe.weight": (context, d), "ln_f.weight": (d,), "ln_f.bias": (d,)}
    for i in range(layers):
        for name, *shape in [("attn.c_attn", d, 3 * d), ("attn.c_proj", d, d), ("mlp.c_fc", d, 4 * d), ("mlp.c_proj", 4 * d, d), ("ln_1", d), ("ln_2", d)]:
            shapes |= {f"h.{i}.{name}.weight": tuple(shape), f"h.{i}.{name}.bias": (shape[-1],)}
    return shapes


def check_weights(weights):
    """看看读出来的是不是 GPT-2，顺便数出它的大小。

    参数:
        weights (dict): open_safetensors 的结果

    返回:
        tuple[int, int]: 嵌入维度和层数

    异常:
        ValueError: 少了什么，或形状不对
    """
    if "wte.weight" not in weights or "wpe.weight" not in weights:
        raise ValueError("这不是 GPT-2 的权重：没有 wte.weight 和 wpe.weight（词嵌入和位置嵌入）")
    (vocab, d), layers = weights["wte.weight"].shape, sum(name.endswith("attn.c_attn.weight") for name in weights)
    if d % HEAD_DIM != 0:
        raise ValueError(f"嵌入维度 {d} 不能被每个头的维度 {HEAD_DIM} 整除，不是 GPT-2 的权重")
    for name, shape in gpt2_shapes(d, layers, vocab, len(weights["wpe.weight"])).items():
        if name not in weights or weights[name].shape != shape:
            raise ValueError(f"这不是 GPT-2 的权重：{name} " + (f"的形状是 {weights[name].shape}，应是 {shape}" if name in weights else "没有"))
    return d, layers


def write_random_weights(path, d, layers):
    """没有真的权重时，写一个形状相同、数是随机的文件：快慢和对错都能看，只是说的是胡话。

    参数:
        path (Path): 写到哪里
        d, layers (int): 嵌入维度、层数
    """
    shapes, random, header, end = gpt2_shapes(d, layers), np.random.default_rng(123), {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # 目录补到 8 的倍数，后面的数才对齐，映射之后可以直接拿来算
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            values = random.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
            file.write(values + np.float32(name.split(".")[-2].startswith("ln") and name.endswith("weight")))  # 归一化的缩放在 1 附近


def layer_norm(x, scale, shift):
    """层归一化。

    参数:
        x (ndarray): (t, d)
        scale, shift (ndarray): 都是 (d,)

    返回:
        ndarray: (t, d)
    """
    x = x - x.mean(axis=-1, keepdims=True)  # (t, d)
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(1e-5)) * scale + shift


def gelu(x):
    """GELU 激活函数，GPT-2 用的 tanh 近似；任意形状，一个数一个数地算。"""
    # x * x * x 而不是 x**3：NumPy 的乘方要慢十几倍。
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


class NumpyGPT:
    """GPT-2 的前向传播，带 KV 缓存：送进新的词元，交出它们的 logits。

    参数:
        weights (dict): 名字 → 数组
        d, layers (int): 嵌入维度、层数
    """

    def __init__(self, weights, d, layers):
        self.weights, self.layers, self.heads = weights, layers, d // HEAD_DIM
        self.context_length = len(weights["wpe.weight"])
        # 预分配的缓存，形状是层数、h、上下文长度、k。np.empty 只是占个号，写到哪里系统才给哪里的内存。
        self.keys = np.empty((layers, self.heads, self.context_length, HEAD_DIM), np.float32)
        self.values = np.empty_like(self.keys)
        self.length = 0  # 缓存里已经有几个词元

    def linear(self, x, name):
        """线性层：t 行的 x 乘权重，加偏置；全部时间几乎都花在这里。"wte" 是输出层，与词嵌入共用一份权重，没有偏置。"""
        return x @ self.weights["wte.weight"].T if name == "wte" else x @ self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]  # (t, …)

    def forward(self, ids):
        """前向传播。

        参数:
            ids (list[int]): 新词元的编号，t 个；以前的都在缓存里

        返回:
            ndarray: logits，(t, V)

        异常:
            ValueError: 连同缓存里的，超过了上下文长度
        """
        w, t, s = self.weights, len(ids), self.length + len(ids)
        if s > self.context_length:
            raise ValueError(f"一共 {s} 个词元，超过了模型的上下文长度 {self.context_length}")

        def norm(x, name):
            return layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"])

        x = w["wte.weight"][ids] + w["wpe.weight"][self.length : s]  # (t, d)
        future = np.arange(s) > np.arange(self.length, s)[:, None]  # (t, s)　因果掩码：键在查询的后面
        for i in range(self.layers):
            # ① 注意力。一次大乘法得到并排的 Q、K、V，切成三份，再各切成 h 个头。
            qkv = self.linear(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn")  # (t, 3d)
            queries, keys, values = qkv.reshape(t, 3, self.heads, HEAD_DIM).transpose(1, 2, 0, 3)  # (h, t, k)　三个都是
            self.keys[i, :, self.length : s] = keys
            self.values[i, :, self.length : s] = values
            scores = queries @ self.keys[i, :, :s].transpose(0, 2, 1) / HEAD_DIM**0.5  # (h, t, s)
            scores[:, future] = -np.inf
            scores = np.exp(scores - scores.max(axis=-1, keepdims=True))  # 先减最大值，exp 才不会溢出；softmax 的结果不变
            attention = scores / scores.sum(axis=-1, keepdims=True)  # (h, t, s)
            context = (attention @ self.values[i, :, :s]).transpose(1, 0, 2).reshape(t, -1)  # (t, d)
            x = x + self.linear(context, f"h.{i}.attn.c_proj")
            # ② 前馈网络。
            x = x + self.linear(gelu(self.linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")), f"h.{i}.mlp.c_proj")
        self.length += t
        return self.linear(norm(x, "ln_f"), "wte")  # (t, V)


def generate(gpt, ids, max_new_tokens):
    """贪心解码，第一次送整句提示词，以后每次只送刚生成的那一个。

    参数:
        gpt (NumpyGPT): 模型，缓存是空的
        ids (list[int]): 提示词的词元编号
        max_new_tokens (int): 生成几个

    返回:
        tuple[list, ndarray, list]: 新生成的编号；每一步的 logits，(n, V)；每一步的秒数
    """
    new, logits, seconds, feed = [], [], [], ids
    for _ in range(max_new_tokens):
        start = time.perf_counter()
        logits.append(gpt.forward(feed)[-1])  # (V,)　只有最后一个词元的下一个是新问题
        feed = [int(logits[-1].argmax())]
        new += feed
        seconds.append(time.perf_counter() - start)
    return new, np.stack(logits), seconds


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


def numpy_part():
    """前半场：读参数、找权重、生成文本，全程没有 PyTorch。

    返回:
        dict: 后半场要用的：模型、编号、logits、用时
    """
    parser = argparse.ArgumentParser(description="实验　只用 NumPy 的 GPT-2")
    parser.add_argument("--weights", type=Path, help="GPT-2 的权重，safetensors 文件（默认：现造的随机数）")
    parser.add_argument("--prompt", default="Every effort moves you", help="提示词（默认：Every effort moves you）")
    parser.add_argument("--max-new-tokens", type=int, default=48, help="生成几个词元（默认：48）")
    parser.add_argument("--quick", action="store_true", help="用 4 层、d = 192 的小模型（权重随机）")
    args = parser.parse_args()
    if args.max_new_tokens < 4:
        parser.error(f"--max-new-tokens 至少是 4，不能是 {args.max_new_tokens}")
    print(f"NumPy {np.__version__}，导入用了 {time.perf_counter() - START:.2f} 秒；PyTorch 还没有导入", flush=True)
    ready = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            tokenizer = tiktoken.get_encoding("gpt2")
            ids = tokenizer.encode(args.prompt, allowed_special={"<|endoftext|>"})
            tokenizer_seconds = time.perf_counter() - ready
            path = args.weights or Path(folder) / "random.safetensors"
            if args.weights is None:
                write_random_weights(path, *SIZES["mini" if args.quick else "124M"])
            print(f"权重　{args.weights or '现造的随机数，说的是胡话'}")
            begin = time.perf_counter()
            weights = open_safetensors(path)
            d, layers = check_weights(weights)
            opened = time.perf_counter()
            gpt = NumpyGPT(weights, d, layers)
            if not 1 <= len(ids) <= gpt.context_length - args.max_new_tokens:
                parser.error(f"提示词 {len(ids)} 个词元，再生成 {args.max_new_tokens} 个，超出了上下文长度 {gpt.context_length}（提示词也不能是空的）")
            new, logits, seconds = generate(gpt, ids, args.max_new_tokens)
        except (ValueError, OSError) as error:
            parser.error(str(error))
        # Windows 不许删除还映射着的文件；别的系统随时可删，映射仍然有效。
        weights = {name: np.array(array) for name, array in weights.items()} if os.name == "nt" and args.weights is None else weights
    stages = {"导入": ready - START, "分词器": tokenizer_seconds, "打开文件": opened - begin, "第一个词元": seconds[0]}
    print(f"打开文件 {stages['打开文件'] * 1000:.0f} 毫秒，第一个词元 {seconds[0] * 1000:.0f} 毫秒（提示词 {len(ids)} 个）；从脚本第一行算起共 {sum(stages.values()):.2f} 秒")
    print(f"之后每秒 {1 / np.median(seconds[1:]):.1f} 个词元")
    print(f"文本　{tokenizer.decode(ids + new)!r}")
    found = {"weights": weights, "d": d, "layers": layers, "ids": ids, "new": new, "logits": logits, "stages": stages}
    return found | {"torch": "torch" in sys.modules, "quick": args.quick}


if __name__ == "__main__":
    RESULT = numpy_part()

# ---- 后半场：现在才导入 PyTorch，只为核对。类要写在最外层，而写类就得先有 nn.Module，所以导入只能放在文件中间。 ----
IMPORT_START = time.perf_counter()

import torch
import torch.nn as nn

IMPORT_SECONDS = time.perf_counter() - IMPORT_START

import statistics  # 这两个只为量快慢，不算在导入的时间里

from tqdm import tqdm


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


# region 沿用 ch04/experiments/exp_kv_cache.py: in_turn, compare, speeds
def in_turn(jobs, rounds, title="轮流量"):
    """几件事轮流做，每轮换一个先后：别的程序抢 CPU 时大家一起慢，相除就抵消了。（详解见 ch04/experiments/exp_kv_cache.py）"""
    names, seconds = list(jobs), {name: [] for name in jobs}
    for i in tqdm(range(rounds), desc=title, unit="轮", leave=False):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            jobs[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def compare(before, after):
    """后一个比前一个快几倍，看不看得清：同一轮的两次相除，一半的比值都在 1 的同一边，才算看得清。（详解见 ch04/experiments/exp_kv_cache.py）"""
    low, middle, high = statistics.quantiles([a / b for a, b in zip(before, after)], n=4)
    clear = not low <= 1 <= high and abs(middle - 1) > 0.03
    return middle, ("更快" if middle > 1 else "更慢") if clear else "分不出"


def speeds(seconds):
    """每秒几次，从慢到快三个数：四分之一、一半、四分之三的位置。（详解见 ch04/experiments/exp_kv_cache.py）"""
    return [1 / value for value in reversed(statistics.quantiles(seconds, n=4))]


# endregion


def torch_model(weights, d, layers):
    """gpt.py 的 GPTModel，装上同一份权重。

    参数:
        weights (dict): 名字 → 数组
        d, layers (int): 嵌入维度、层数

    返回:
        GPTModel: 评估模式的模型
    """
    vocab, context = len(weights["wte.weight"]), len(weights["wpe.weight"])
    cfg = {"vocab_size": vocab, "context_length": context, "emb_dim": d, "n_heads": d // HEAD_DIM, "n_layers": layers, "drop_rate": 0.0, "qkv_bias": True}
    state = {"tok_emb.weight": weights["wte.weight"], "pos_emb.weight": weights["wpe.weight"], "out_head.weight": weights["wte.weight"]}
    for theirs, ours in [("ln_f", "final_norm"), *[(f"h.{i}.ln_{n}", f"trf_blocks.{i}.norm{n}") for i in range(layers) for n in (1, 2)]]:
        state |= {f"{ours}.scale": weights[f"{theirs}.weight"], f"{ours}.shift": weights[f"{theirs}.bias"]}
    for i in range(layers):
        pairs = [("attn.c_proj", "att.out_proj"), ("mlp.c_fc", "ff.layers.0"), ("mlp.c_proj", "ff.layers.2")]
        linears = {ours: (weights[f"h.{i}.{theirs}.weight"], weights[f"h.{i}.{theirs}.bias"]) for theirs, ours in pairs}
        columns, biases = np.split(weights[f"h.{i}.attn.c_attn.weight"], 3, axis=1), np.split(weights[f"h.{i}.attn.c_attn.bias"], 3)
        linears |= dict(zip(("att.W_query", "att.W_key", "att.W_value"), zip(columns, biases)))
        for name, (weight, bias) in linears.items():
            state |= {f"trf_blocks.{i}.{name}.weight": weight.T, f"trf_blocks.{i}.{name}.bias": bias}  # nn.Linear 存的是（输出，输入）
    model = GPTModel(cfg).eval()
    # 数组是只读的（映射着文件），先复制一份再给 PyTorch；掩码是 buffer，文件里没有，所以 strict=False。
    model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in state.items()}, strict=False)
    return model


class TorchLinearGPT(NumpyGPT):
    """同样的代码，只把矩阵乘法换成 PyTorch 的：比的就是这一样。

    参数:
        weights (dict): 名字 → 数组
        d, layers (int): 嵌入维度、层数
    """

    def __init__(self, weights, d, layers):
        super().__init__(weights, d, layers)
        # 转置、复制一遍，摆成 nn.Linear 的样子；词嵌入本来就是这样摆的。
        self.tensors = {"wte": (torch.from_numpy(np.array(weights["wte.weight"])), None)}
        for name in [name.removesuffix(".weight") for name in weights if name.startswith("h.") and name.endswith(".weight") and ".ln_" not in name]:
            self.tensors[name] = torch.from_numpy(np.array(weights[f"{name}.weight"].T, order="C")), torch.from_numpy(np.array(weights[f"{name}.bias"]))

    @torch.no_grad()
    def linear(self, x, name):
        """线性层，用 torch 的 F.linear。"""
        return nn.functional.linear(torch.from_numpy(np.asarray(x, np.float32)), *self.tensors[name]).numpy()


def draw(paths, seconds, path):
    """左图：到第一个词元为止的时间；右图：之后的速度，短线是四分位。

    参数:
        paths (dict): 哪条路 → 各个阶段的秒数（阶段名 → 秒）
        seconds (dict): 谁做矩阵乘法 → 每个词元的秒数
        path (Path): 图片写到哪里
    """
    import matplotlib.pyplot as plt  # 放在文件开头，就会算进"到第一个词元"的时间
    import zhplot  # noqa: F401　导入它，图上就能写中文

    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2), width_ratios=[3, 2], layout="constrained")
    colors = {"导入": "tab:gray", "分词器": "tab:olive", "打开文件": "tab:cyan", "第一个词元": "tab:blue", "建模型、装权重": "tab:orange"}
    for row, stages in enumerate(paths.values()):
        begin = 0
        for name, value in stages.items():
            left.barh(row, value, left=begin, color=colors[name])
            begin += value
        left.text(begin, row, f" {begin:.2f}", va="center")
    left.set(title="到第一个词元，几秒")
    left.set_yticks(range(len(paths)), paths)
    left.margins(x=0.15)
    left.invert_yaxis()
    figure.legend([plt.Rectangle((0, 0), 1, 1, color=color) for color in colors.values()], list(colors), loc="outside lower center", ncols=5, fontsize=8)
    for column, values in enumerate(seconds.values()):
        low, middle, high = speeds(values)
        right.errorbar(column, middle, [[middle - low], [high - middle]], marker="o", capsize=5)
        right.annotate(f"{middle:.1f}", (column, middle), xytext=(8, 0), textcoords="offset points", va="center")
    right.set(xlim=(-0.6, 1.6), ylim=(0, None), title="之后每秒几个词元：谁做矩阵乘法")
    right.set_xticks(range(len(seconds)), seconds)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(result):
    """后半场：与 gpt.py 核对每一步的 logits，再比速度。

    参数:
        result (dict): numpy_part 的结果
    """
    weights, d, layers, ids, new = (result[name] for name in ("weights", "d", "layers", "ids", "new"))
    begin = time.perf_counter()
    model = torch_model(weights, d, layers)
    built = time.perf_counter()
    with torch.no_grad():
        model(torch.tensor([ids]))  # (b, t, V)
        first = time.perf_counter()
        # 一次前向，每个位置都有 logits：第 i 个位置的，应与 NumPy 版（一个个生成、带缓存）当时的相同。
        expected = model(torch.tensor([ids + new[:-1]]))[0, len(ids) - 1 :].numpy()  # (n, V)
    difference, scale = np.abs(expected - result["logits"]).max(), np.abs(expected).max()
    del model

    # 两个轮流走，各走一步就换：这段时间机器忙不忙，对两边一样。
    contestants = {"NumPy": NumpyGPT(weights, d, layers), "torch": TorchLinearGPT(weights, d, layers)}
    agreed = all(np.abs(gpt.forward(ids)[-1] - result["logits"][0]).max() <= 1e-4 * scale for gpt in contestants.values())
    seconds = in_turn({name: (lambda gpt=gpt: gpt.forward(new[:1])) for name, gpt in contestants.items()}, len(new))
    stages = result["stages"]
    slow = {"导入": stages["导入"] + IMPORT_SECONDS, "分词器": stages["分词器"], "建模型、装权重": built - begin, "第一个词元": first - built}
    print(f"\n之后（轮流跑、取中位数）：矩阵乘法用 NumPy {speeds(seconds['NumPy'])[1]:.1f} 词元/秒，用 torch 的 F.linear {speeds(seconds['torch'])[1]:.1f} 词元/秒")
    draw({"NumPy": stages, "PyTorch": slow}, seconds, OUTPUTS / "numpy_gpt.png")
    print(f"图片已写到 {OUTPUTS / 'numpy_gpt.png'}")

    (ratio, word), bytes_read = compare(seconds["torch"], seconds["NumPy"]), 4 * (layers * 12 * d * d + len(weights["wte.weight"]) * d)
    print("\n所以（都是这一次量的）：")
    extra = slow["导入"] - stages["导入"] + slow["建模型、装权重"]
    print(f"  到第一个词元，NumPy {sum(stages.values()):.2f} 秒，PyTorch {sum(slow.values()):.2f} 秒：后者导入和建模型多用 {extra:.2f} 秒，", end="")
    print(f"算第一个词元 {stages['第一个词元']:.2f} 秒对 {slow['第一个词元']:.2f} 秒。")
    print(f"  之后的速度，NumPy 是 torch 的 {ratio:.2f} 倍" + ("（--quick 模型太小：看流程，不下结论）。" if result["quick"] else f"，{word}。"))
    print(f"  每个词元都要把 {bytes_read / 2**20:.0f} MB 权重从头读一遍：NumPy 每秒读 {bytes_read * speeds(seconds['NumPy'])[1] / 1e9:.1f} GB。怎样更快，见 exp_fast_decode.py。")

    print("\n这个数字对吗？")
    confirm("第一个词元出来时，PyTorch 还没有导入", not result["torch"], "前面哪里导入了 torch")
    confirm(f"{len(new)} 步的 logits 都与 gpt.py 相同（最多差 {difference:.1e}，logits 最大 {scale:.1f}）", difference < 1e-4 * scale, "掩码、转置、GELU 或位置有一处不同")
    best = expected[np.arange(len(new)), new] >= expected.max(axis=-1) - 2e-4 * scale  # (n,)
    confirm(f"{len(new)} 个词元，每个都是 gpt.py 认为分数最高的（或与最高的打平）", bool(best.all()), "缓存里的键和值错了位")
    confirm("换成 torch 的矩阵乘法，logits 也相同", bool(agreed), "权重没有转置")


if __name__ == "__main__":
    main(RESULT)
