"""第 5 章 · 5.5 节　把 OpenAI 的权重装进自己写的 GPT

读完你应该能回答：
    1. 权重文件里有什么，没有什么？
    2. c_attn 是什么，为什么要切成三份？权重为什么要转置，哪些忘了转置也不报错？
    3. 文件里没有输出层，out_head 的权重从哪里来？
    4. 装错一处会怎样：报错，还是悄悄地说胡话？怎样证明全都装对了？

运行：
    python ch05/main/example_05_openai_weights.py        # 有没有真正的权重，都从头走到尾
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    没有权重时约 3 秒，0.5 GB；有 124M 时约 12 秒，2.5 GB（2 核 CPU）

真正的权重（548 MB）：python setup/download.py gpt2-124M。没有它，脚本自己造一个小文件，名字和摆法与 OpenAI 的一样，只是数是随机的。

形状记号（全书统一）：b 批大小　t 序列长度（词元数）　d 嵌入维度　h 头数　k 每个头的维度（k = d / h）　V 词表大小　n_ctx 上下文长度
"""

import os
import sys
from pathlib import Path

import numpy as np
import tiktoken
import torch
import torch.nn as nn
from safetensors.torch import load_file, save_file

# 改这里：要哪一种规模；没有下载过它，就用随机造的小文件
SIZE = "124M"

# 模型有多大，权重文件里没有写，要另外记着（原书从 hparams.json 读）。头数尤其如此：切成 12 个头还是 16 个头，张量的形状都一样。
# 四种规模的每个头都是 64 维：768 / 12 = 1024 / 16 = 1280 / 20 = 1600 / 25 = 64。
GPT2_SETTINGS = {
    "124M": {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12},
    "355M": {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 1024, "n_head": 16, "n_layer": 24},
    "774M": {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 1280, "n_head": 20, "n_layer": 36},
    "1558M": {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 1600, "n_head": 25, "n_layer": 48},
}
RANDOM_SETTINGS = {"n_vocab": 50257, "n_ctx": 64, "n_embd": 48, "n_head": 4, "n_layer": 2}  # 随机的小文件有多大

here = Path(__file__ if "__file__" in globals() else "x").resolve()  # 笔记本里没有 __file__，就从当前文件夹往上找
OUTPUTS = next((folder / "ch05" for folder in here.parents if (folder / "ch05").is_dir()), Path()) / "outputs"
OUTPUTS.mkdir(exist_ok=True)


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


# %% ① 文件里该有什么：一张"名字 → 形状"的表
def gpt2_shapes(settings):
    """列出 GPT-2 的权重文件里应有的每一项：名字和形状。

    参数:
        settings (dict): 模型的大小，GPT2_SETTINGS 的一项

    返回:
        dict: 名字 → 形状，如 "h.0.attn.c_attn.weight" → (768, 2304)
    """
    d = settings["n_embd"]
    # 每一块里的名字都相同。权重的两维是"输入、输出"，用的时候算 x @ w + b。
    # 开头的 c 是 convolution：OpenAI 当年用宽度为 1 的卷积写线性层，算出来完全一样。
    block = {
        "ln_1.weight": (d,), "ln_1.bias": (d,),
        "attn.c_attn.weight": (d, 3 * d), "attn.c_attn.bias": (3 * d,),  # Q、K、V 三个矩阵左右并排
        "attn.c_proj.weight": (d, d), "attn.c_proj.bias": (d,),
        "ln_2.weight": (d,), "ln_2.bias": (d,),
        "mlp.c_fc.weight": (d, 4 * d), "mlp.c_fc.bias": (4 * d,),
        "mlp.c_proj.weight": (4 * d, d), "mlp.c_proj.bias": (d,),
    }  # fmt: skip
    shapes = {"wte.weight": (settings["n_vocab"], d), "wpe.weight": (settings["n_ctx"], d)}  # 词嵌入、位置嵌入
    for layer in range(settings["n_layer"]):
        shapes |= {f"h.{layer}.{name}": shape for name, shape in block.items()}
    return shapes | {"ln_f.weight": (d,), "ln_f.bias": (d,)}  # 最后的层归一化；没有输出层，它与词嵌入共用一份


# 照这张表造一个小文件，没有下载权重时用它。数要像训练过的：偏置不能是 0（OpenAI 的也不是），装反了、装漏了才看得出来；
# 层归一化的缩放在 1 附近。再放上每块的因果掩码，OpenAI 的文件里也有。
torch.manual_seed(123)
random_tensors = {name: 0.1 * torch.randn(shape) for name, shape in gpt2_shapes(RANDOM_SETTINGS).items()}
for name in random_tensors:
    if name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")):
        random_tensors[name] += 1
mask = torch.ones(RANDOM_SETTINGS["n_ctx"], RANDOM_SETTINGS["n_ctx"]).tril()
random_tensors |= {f"h.{layer}.attn.bias": mask.clone() for layer in range(RANDOM_SETTINGS["n_layer"])}
save_file(random_tensors, OUTPUTS / "gpt2-random.safetensors")

path = find_data(f"gpt2-{SIZE}.safetensors", "gpt2-random.safetensors")  # 有真的就用真的
settings = RANDOM_SETTINGS if path.stem == "gpt2-random" else GPT2_SETTINGS[SIZE]
real = path.stat().st_size == 548_105_171  # OpenAI 的 124M 正好是这么多字节；只有它，才核对书上的数
print(f"【5.5】权重文件　{path}" + ("（随机的数）" if path.stem == "gpt2-random" else ""))

# %% ② 文件里真有什么：只有名字和数，没有代码
# load_file 几乎不花时间：文件是映射进来的，用到哪个数，系统才从硬盘读哪一页。
# .attn.bias 名字像偏置，其实是因果掩码，我们的模型自己会建，不要它；有的文件，每个名字前面多一个 transformer.，去掉。
tensors = {
    name.removeprefix("transformer."): tensor
    for name, tensor in load_file(path).items()
    if not name.endswith(".attn.bias")
}
first_block = [name for name in tensors if name.startswith("h.0.")]
print(f"\n{len(tensors)} 个张量，第 1 块里有 {len(first_block)} 个：")
for name in sorted(first_block):
    print(f"  {name:24} {tuple(tensors[name].shape)}")
same_names = {name: tuple(tensor.shape) for name, tensor in tensors.items()} == gpt2_shapes(settings)


# %% ③ 平铺的名字 → 原书的 params：按层、按部件一级一级地放
def nest_gpt2_params(tensors, settings):
    """把平铺的"名字 → 张量"，整理成原书的 params：一级一级的字典。

    参数:
        tensors (dict): 名字 → 张量，名字与 gpt2_shapes 列的相同
        settings (dict): 模型的大小，GPT2_SETTINGS 的一项

    形状:
        params["wte"] (V, d)　params["wpe"] (n_ctx, d)　params["g"]、params["b"] (d,)　params["blocks"] 里一块一个字典

    返回:
        dict: 嵌套的字典，最里面是 float32 的 NumPy 数组

    出处: 原书 5.5 节的 load_gpt2_params_from_tf_ckpt，那里读的是 TensorFlow 的文件
    """
    params = {"blocks": [{} for _ in range(settings["n_layer"])]}
    for name, tensor in tensors.items():
        parts = name.split(".")
        # 最后一级照原书的叫法：w 是权重，b 是偏置；层归一化的缩放叫 g（gain）。
        last = "b" if parts[-1] == "bias" else "g" if parts[-2].startswith("ln") else "w"
        array = tensor.float().numpy()  # 半精度的文件转成 float32；已经是的，一个数也不复制
        if parts[0] == "h":  # "h.3.attn.c_attn.weight" → params["blocks"][3]["attn"]["c_attn"]["w"]
            inner = params["blocks"][int(parts[1])]
            for part in parts[2:-1]:
                inner = inner.setdefault(part, {})
            inner[last] = array
        elif parts[0] == "ln_f":  # 最后的层归一化，直接放在最外面
            params[last] = array
        else:  # wte、wpe
            params[parts[0]] = array
    return params


params = nest_gpt2_params(tensors, settings)
attn = params["blocks"][0]["attn"]
print(f"\n设置　{settings}")
print(f"params 的键　{list(params)}　blocks 里有 {len(params['blocks'])} 块")
print(f"词嵌入 wte　{params['wte'].shape}　(V, d)　开头 {params['wte'][0, :3]}")
if not real:
    print("（真正的 124M：12 块；wte (50257, 768)，开头 -0.11010301 -0.03926672 0.03310751）")

# %% ④ c_attn：Q、K、V 挤在一个矩阵里
# OpenAI 用一次大乘法同时算出查询、键、值；我们在第 3 章写了三层。把大矩阵从左到右切成三份，次序是 Q、K、V。
d = settings["n_embd"]
w, bias = torch.from_numpy(attn["c_attn"]["w"]), torch.from_numpy(attn["c_attn"]["b"])
q_w, k_w, v_w = np.split(attn["c_attn"]["w"], 3, axis=-1)  # 三个 (d, d)
q_b, k_b, v_b = np.split(attn["c_attn"]["b"], 3, axis=-1)  # 三个 (d,)
x = torch.randn(5, d)  # (t, d)　随便 5 个词元
together = x @ w + bias  # (t, 3d)　OpenAI 的写法：一次算完
apart = [x @ torch.from_numpy(part) + torch.from_numpy(b) for part, b in [(q_w, q_b), (k_w, k_b), (v_w, v_b)]]
split_error = (together - torch.cat(apart, dim=-1)).abs().max().item()
print(f"\nc_attn {tuple(w.shape)} 切成三个 {q_w.shape}；一次算完与分三次算，最多差 {split_error:.0e}")


# %% ⑤ 转置：一边的次序是"输入、输出"，另一边是"输出、输入"
def assign(left, right):
    """把一个数组变成模型的参数；形状不同就报错。

    参数:
        left (nn.Parameter): 模型里原来的参数
        right (ndarray): 要换上的数，形状应与 left 相同

    返回:
        nn.Parameter: 新的参数，数据类型和设备与 left 相同

    异常:
        ValueError: 形状不同，或模型里没有这个参数

    出处: 原书 5.5 节
    """
    if left is None:
        raise ValueError("模型里没有这个偏置：OpenAI 的权重带 Q、K、V 的偏置，建模型时要 qkv_bias=True")
    # 一定要检查：copy_ 之类会自动广播，形状错了也不吭声，模型只是莫名其妙地说胡话。
    if left.shape != right.shape:
        raise ValueError(f"形状不同：模型里是 {tuple(left.shape)}，权重是 {tuple(right.shape)}，多半是模型的配置与权重不是一种规模")
    return nn.Parameter(torch.tensor(right, dtype=left.dtype, device=left.device))


# OpenAI 算 x @ w + b，w 的行数是输入的维度；nn.Linear 算 x @ weight.T + bias，weight 的行数是输出的维度。所以装进去要转置。
linear = nn.Linear(d, 4 * d)
c_fc = params["blocks"][0]["mlp"]["c_fc"]["w"]  # (d, 4d)
print(f"\n升维那层：文件里 {c_fc.shape}，nn.Linear 里 {tuple(linear.weight.shape)}。忘了转置，assign 会说：")
try:
    assign(linear.weight, c_fc)
    caught = False
except ValueError as error:
    caught = True
    print(f"  {error}")
# 注意力里的四个矩阵都是方阵，转不转置形状都一样，忘了也不报错：这是最容易错的一处。
square = torch.from_numpy(attn["c_proj"]["w"])  # (d, d)
forgotten = (x @ square - x @ square.T).abs().max().item()
print(f"out_proj 是方阵：忘了转置不报错，输出却最多差 {forgotten:.2f}")


# %% ⑥ 建一个同样大小的 GPTModel，逐个装进去
def load_weights_into_gpt(gpt, params):
    """把 OpenAI 的权重装进我们的 GPTModel：同样的零件，两边起的名字和摆法不同，逐个对上。

    参数:
        gpt (GPTModel): 模型，大小要与权重相同，qkv_bias=True
        params (dict): nest_gpt2_params 整理好的权重

    异常:
        ValueError: 层数或形状不同

    出处: 原书 5.5 节
    """
    if len(gpt.trf_blocks) != len(params["blocks"]):
        raise ValueError(f"模型有 {len(gpt.trf_blocks)} 块，权重有 {len(params['blocks'])} 块，不是一种规模")
    gpt.tok_emb.weight = assign(gpt.tok_emb.weight, params["wte"])  # (V, d)
    gpt.pos_emb.weight = assign(gpt.pos_emb.weight, params["wpe"])  # (n_ctx, d)

    for block, block_params in zip(gpt.trf_blocks, params["blocks"]):
        attn, mlp = block_params["attn"], block_params["mlp"]
        # ① c_attn 切成三份，次序是 Q、K、V；每一份都要转置。三个都是方阵，装反了、忘了转置，都不会报错。
        weights = np.split(attn["c_attn"]["w"], 3, axis=-1)  # 三个 (d, d)
        biases = np.split(attn["c_attn"]["b"], 3, axis=-1)  # 三个 (d,)
        for linear, w, b in zip((block.att.W_query, block.att.W_key, block.att.W_value), weights, biases):
            linear.weight = assign(linear.weight, w.T)  # (d, d)
            linear.bias = assign(linear.bias, b)  # (d,)
        # ② 其余三个线性层一一对应：混合各头的 out_proj，前馈网络的升维和降维。
        dense = [(block.att.out_proj, attn["c_proj"]), (block.ff.layers[0], mlp["c_fc"]), (block.ff.layers[2], mlp["c_proj"])]
        for linear, part in dense:
            linear.weight = assign(linear.weight, part["w"].T)
            linear.bias = assign(linear.bias, part["b"])
        # ③ 层归一化：g 是缩放，b 是平移。
        for norm, part in [(block.norm1, block_params["ln_1"]), (block.norm2, block_params["ln_2"])]:
            norm.scale = assign(norm.scale, part["g"])  # (d,)
            norm.shift = assign(norm.shift, part["b"])  # (d,)

    gpt.final_norm.scale = assign(gpt.final_norm.scale, params["g"])  # (d,)
    gpt.final_norm.shift = assign(gpt.final_norm.shift, params["b"])  # (d,)
    # ④ 权重共享（weight tying）：OpenAI 拿词嵌入当输出层用。我们复制一份给 out_head，之后训练时两边各改各的。
    gpt.out_head.weight = assign(gpt.out_head.weight, params["wte"])  # (V, d)


# 与 5.2 节训练时的配置差两处：上下文从 256 换回 1024；Q、K、V 的投影带偏置（今天的模型大多不带，但权重里有，就得给它留地方）。
config = {
    "vocab_size": settings["n_vocab"],
    "context_length": settings["n_ctx"],
    "emb_dim": settings["n_embd"],
    "n_heads": settings["n_head"],
    "n_layers": settings["n_layer"],
    "drop_rate": 0.0,  # OpenAI 训练时用的是 0.1；我们只用它生成，微调时书里也设成 0
    "qkv_bias": True,
}
torch.manual_seed(123)
gpt = GPTModel(config)
gpt.eval()
load_weights_into_gpt(gpt, params)
print("\n装好了。要是 qkv_bias 写成 False：")
try:
    load_weights_into_gpt(GPTModel({**config, "n_layers": 1, "qkv_bias": False}), {**params, "blocks": params["blocks"][:1]})
except ValueError as error:
    print(f"  {error}")

# 权重共享的道理：词嵌入把编号变成向量；输出层要问"这个向量最像哪个词元的向量"，用的还是那张表，logits = x @ wte.T。
total = sum(p.numel() for p in gpt.parameters())
stored = sum(tensor.numel() for tensor in tensors.values())
print(f"文件里 {stored:,} 个数；我们的模型 {total:,} 个，多出的 {total - stored:,} 个就是又装了一份的 wte")


# %% ⑦ 全都装对了吗？不用 GPTModel，照 OpenAI 的写法再算一遍
def gpt2_by_hand(ids, params, n_head):
    """照 OpenAI 的写法算 logits：没有 nn.Module，没有转置，只有 x @ w + b；算法是第 3、4 章的，只是换了一种写法。

    参数:
        ids (Tensor): 词元编号，(t,)
        params (dict): nest_gpt2_params 整理好的权重
        n_head (int): 头数

    返回:
        Tensor: logits（未归一化的分数），(t, V)
    """

    def dense(x, part):
        return x @ torch.from_numpy(part["w"]) + torch.from_numpy(part["b"])  # (t, d_out)

    def norm(x, part):
        return nn.functional.layer_norm(x, x.shape[-1:], torch.from_numpy(part["g"]), torch.from_numpy(part["b"]))

    t, wte = len(ids), torch.from_numpy(params["wte"])
    future = torch.full((t, t), -torch.inf).triu(diagonal=1)  # (t, t)　加在分数上：右上角是 -inf，看不到未来
    x = wte[ids] + torch.from_numpy(params["wpe"][:t])  # (t, d)
    for block in params["blocks"]:
        queries, keys, values = dense(norm(x, block["ln_1"]), block["attn"]["c_attn"]).chunk(3, dim=-1)  # 三个 (t, d)
        heads = []  # 一个头一个头地算，慢但好懂；第 3 章的变形只是把它们并成一次
        for q, k, v in zip(queries.chunk(n_head, dim=-1), keys.chunk(n_head, dim=-1), values.chunk(n_head, dim=-1)):  # 各 (t, k)
            heads.append(torch.softmax(q @ k.T / k.shape[-1] ** 0.5 + future, dim=-1) @ v)  # (t, k)
        x = x + dense(torch.cat(heads, dim=-1), block["attn"]["c_proj"])  # (t, d)
        # GPT-2 用的是 tanh 近似的 GELU，第 4 章手写的那个公式。
        hidden = nn.functional.gelu(dense(norm(x, block["ln_2"]), block["mlp"]["c_fc"]), approximate="tanh")  # (t, 4d)
        x = x + dense(hidden, block["mlp"]["c_proj"])  # (t, d)
    return norm(x, params) @ wte.T  # (t, V)　最后的层归一化，再与每个词元的向量求点积


tokenizer = tiktoken.get_encoding("gpt2")
idx = text_to_token_ids("Every effort moves you", tokenizer)  # (1, t)
by_hand = gpt2_by_hand(idx[0], params, settings["n_head"])  # (t, V)


@torch.no_grad()
def logits_error():
    """模型这时的 logits，与手写的算法最多差多少。"""
    return (gpt(idx)[0] - by_hand).abs().max().item()


right = logits_error()
scale = by_hand.abs().mean().item()
print(f"\nGPTModel 与手写的算法，{tuple(by_hand.shape)} 个 logits 最多差 {right:.0e}（logits 本身的大小约 {scale:.1f}）")

# %% ⑧ 故意装错：不报错，但算出来的不是同一个模型
first = gpt.trf_blocks[0].att
good = {name: tensor.clone() for name, tensor in first.state_dict().items()}
mistakes = {
    "Q 与 K 对调": {"W_query.weight": good["W_key.weight"], "W_key.weight": good["W_query.weight"]},
    "K 与 V 对调": {"W_key.weight": good["W_value.weight"], "W_value.weight": good["W_key.weight"]},
    "out_proj 忘了转置": {"out_proj.weight": good["out_proj.weight"].T},
    "Q、K、V 的偏置没装": {name: torch.zeros(d) for name in ("W_query.bias", "W_key.bias", "W_value.bias")},
}
wrong = {}
for title, changed in mistakes.items():
    first.load_state_dict(good | changed)
    wrong[title] = logits_error()
first.load_state_dict(good)  # 改回来

# 第五种：权重全对，头数写错。切成几个头，参数的形状都一样，所以也没有人知道。
n_head = settings["n_head"]
first.num_heads, first.head_dim = n_head // 2, d // (n_head // 2)
wrong["头数写成一半"] = logits_error()
first.num_heads, first.head_dim = n_head, d // n_head

print("只在第 1 块里装错一处，没有任何报错，logits 却差了：")
for title, error in wrong.items():
    print(f"  {error:8.3f}　{title}")

# %% ⑨ 让它说话
# 原书这里把温度定得偏高（1.5），再用 top_k 50 挡住冷门的；种子相同、权重相同，写的就一字不差。
torch.manual_seed(123)
out = generate(gpt, idx, max_new_tokens=25, context_size=config["context_length"], temperature=1.5, top_k=50)  # (1, t + 25)
written = token_ids_to_text(out, tokenizer)
book = "Every effort moves you toward finding an ideal new way to practice something!\n\nWhat makes us want to be on top of that?"
print(f"\n温度 1.5，top_k 50：{written!r}")
if not real:
    print(f"（真正的 124M 写的是 {book!r}）")

# %% ⑩ 存一次，之后都用同一种格式
# 与 gpt_train.py 存的一样：配置和状态字典。第 6、7 章不必再认识 OpenAI 的名字，也不必再切、再转置。
saved = OUTPUTS / f"{path.stem}.pth"
torch.save({"config": config, "model": gpt.state_dict()}, saved.with_suffix(".part"))
os.replace(saved.with_suffix(".part"), saved)  # 写完了才改名：中途断了，也不会留下半个文件

ckpt = torch.load(saved, map_location="cpu", weights_only=True)  # 只读数，不执行文件里的代码
again = GPTModel(ckpt["config"])
again.load_state_dict(ckpt["model"])
same_weights = all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in gpt.state_dict().items())
print(f"\n存到 {saved}，读回来只要三行")

# %% 这个数字对吗？
print("\n这个数字对吗？")
confirm("文件里的名字和形状，与 gpt2_shapes 列的一项不差", same_names, "不是这种规模的权重，或文件里多了别的东西")
confirm("c_attn 切成三份，与一次算完相同", split_error < 1e-3, "切错了方向：该沿最后一维切")
confirm("长方形的矩阵忘了转置，assign 会报错", caught, "assign 没有检查形状")
confirm(f"GPTModel 与照 OpenAI 的写法直接算，logits 最多差 {right:.0e}", right < 1e-2, "装错了地方，或忘了转置")
confirm("五种装错法，每一种都看得出来（比装对时至少差 10 倍）", min(wrong.values()) > 10 * right, "偏置全是 0，或第 1 块没有用上")
untied = torch.equal(gpt.out_head.weight, gpt.tok_emb.weight) and gpt.out_head.weight is not gpt.tok_emb.weight
confirm("输出层与词嵌入相同，但不是同一份", untied, "out_head 忘了装")
extra = settings["n_vocab"] * d
confirm(f"多出的参数正好是 V·d = {extra:,}", total - stored == extra, "qkv_bias 没有打开")
confirm("存了再读，每个权重逐位相同", same_weights, "存的时候模型还没有改回来，或读的是另一个文件")
if real:
    broken, wte = "文件坏了：python setup/download.py --verify", params["wte"]
    start = np.allclose(wte[0, :3], [-0.11010301, -0.03926672, 0.03310751], rtol=0, atol=1e-8)
    confirm("wte 的开头与原书相同：-0.11010301 -0.03926672 0.03310751", start, broken)
    confirm("wte 的最后一个数是 0.12067825", abs(wte[-1, -1] - 0.12067825) < 1e-8, broken)
    confirm("写的与原书 5.5 节一字不差", written == book, "装错了地方，或种子、温度不同")

# %% 动手改
# 1. 把造文件那一行的 0.1 * torch.randn 改成 torch.zeros：五种装错法全都"看不出来"了。全是 0 的权重什么也证明不了。
# 2. ④ 里把 axis=-1 改成 axis=0：形状变成 (d/3, 3d)，一乘就报错；先猜报错里的两个形状。
# 3. 把 config 里的 context_length 改成 settings["n_ctx"] // 2：assign 报形状不同。位置嵌入一行对一个位置，装不进短的表。
