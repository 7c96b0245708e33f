"""第 4 章 · 实验　写一个词元要多久？一级一级地加快，每一级只改一样

问题：　GPT-2 124M，从书上的写法出发：加缓存、合并 Q、K、V、换现成的注意力……一次只改一样，每样各快多少？
先猜：　每写一个词元，都要把全部权重从内存里读一遍（fp32 是 494 MB，内存每秒能读几十 GB）。那么最有用的一样会是哪一样？（先想 10 秒，再运行）
看点：　① 加了缓存以后，一个词元的时间几乎全花在读权重上，少做一点别的运算，快不了多少：多数级只有百分之几，有的分不出；
        ② 「只算最后一个 logits」帮的是提示词，不是后面的词元；③ 最后几级：批大小大于 1，权重读一遍，给 b 句话用，
        每秒一共写出的词元，比前面所有的小改动加起来还多得多（红线是内存读取速度定下的上限，它跟着 b 走）。
动手改：1. --threads 2：两个核一起读，哪几级快了，哪几级没有？
        2. 把 F.scaled_dot_product_attention 里的 is_causal=t > 1 改成 is_causal=False：送提示词时看见了未来，自查里有 SDPA 的各级变成 ✗。
        3. 把 BATCHES 换成 (2, 64)：批大小越大，离红线越远：读权重的时间分摊完了，剩下的是真正的计算。

运行：
    python ch04/experiments/exp_fast_decode.py                   # 权重随机：快慢与数的内容无关
    python ch04/experiments/exp_fast_decode.py --quick
    约 80 秒，2.2 GB（2 核 CPU）；数变短（16、8、4 位），见 exp_fast_decode_lowbit.py

形状记号：b 批大小　t 这一次送进来几个词元　s 连同缓存一共几个　d 嵌入维度　h 头数　k 每个头的维度　V 词表大小
"""

import argparse
import statistics
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import torch.nn.functional as F
import zhplot  # noqa: F401　导入它，图上就能写中文
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
GPT_CONFIG_124M = {"vocab_size": 50257, "context_length": 1024, "emb_dim": 768, "n_heads": 12, "n_layers": 12, "drop_rate": 0.0, "qkv_bias": True}
QUICK_CONFIG = GPT_CONFIG_124M | {"vocab_size": 4096, "emb_dim": 256, "n_heads": 4, "n_layers": 4, "context_length": 256}
# 梯子：每一级在上一级的基础上多开一个开关，别的都不动。
SWITCHES = {"last": "＋只算最后一个 logits", "qkv": "＋合并 Q、K、V", "sdpa": "＋SDPA", "kernels": "＋现成的归一化、GELU", "preallocated": "＋预分配缓存"}
BATCHES = (4, 16)  # 最后几级：开关全开，再把批大小加上去


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


# region 沿用 ch04/experiments/exp_kv_cache.py: ConcatCache, PreallocatedCache, in_turn, compare, speeds
class ConcatCache:
    """一层的 KV 缓存，最直白的写法：每来一批新的键和值，就用 torch.cat 接在后面。（详解见 ch04/experiments/exp_kv_cache.py）"""

    def __init__(self):
        self.reset()

    def reset(self):
        self.keys = self.values = None
        self.length = 0

    def update(self, keys, values):
        self.length += keys.shape[2]
        if self.keys is not None:
            keys = torch.cat([self.keys, keys], dim=2)  # (b, h, s, k)
            values = torch.cat([self.values, values], dim=2)  # (b, h, s, k)
        self.keys, self.values = keys, values
        return keys, values


class PreallocatedCache:
    """一层的 KV 缓存，预分配：一次要够内存，新来的填进下一个空位，旧的一个也不动。（详解见 ch04/experiments/exp_kv_cache.py）"""

    def __init__(self, capacity):
        self.capacity, self.keys, self.values = capacity, None, None
        self.reset()

    def reset(self):
        self.length = 0

    def update(self, keys, values):
        b, h, t, k = keys.shape
        if self.keys is None:
            self.keys, self.values = keys.new_empty(b, h, self.capacity, k), values.new_empty(b, h, self.capacity, k)
        end = self.length + t
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


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


def fuse_qkv(model):
    """每一层的 W_query、W_key、W_value 叠成一个大线性层：读的权重一样多，三次乘法变一次。

    参数:
        model (GPTModel): 权重从这里来

    返回:
        list[nn.Linear]: 每层一个，d → 3d
    """
    fused = []
    for block in model.trf_blocks:
        three = block.att.W_query, block.att.W_key, block.att.W_value
        linear = nn.Linear(three[0].in_features, 3 * three[0].out_features)
        linear.load_state_dict({name: torch.cat([getattr(each, name) for each in three]) for name in ("weight", "bias")})  # 按行叠：先 Q，再 K，再 V
        fused.append(linear)
    return fused


class Decoder:
    """带缓存的生成。开关都不开时，算的就是 GPTModel.forward 那几步，用的也是它的那些层；每个开关换掉一样。

    参数:
        model (GPTModel): 权重从这里来
        fused (list[nn.Linear]): fuse_qkv 的结果，开了 "qkv" 才用
        switches (set[str]): 开哪几个开关，名字见 SWITCHES
        capacity (int): 预分配缓存放得下几个词元
    """

    def __init__(self, model, fused, switches, capacity):
        self.model, self.fused, self.switches = model, fused, switches
        self.caches = [PreallocatedCache(capacity) if "preallocated" in switches else ConcatCache() for _ in model.trf_blocks]

    def norm(self, layer, x):
        """层归一化：自己写的要六七步，每一步都把中间结果写进内存再读出来；现成的一步做完。

        参数:
            layer (LayerNorm): 缩放和平移在它里面
            x (Tensor): (b, t, d)

        返回:
            Tensor: (b, t, d)
        """
        return F.layer_norm(x, x.shape[-1:], layer.scale, layer.shift, layer.eps) if "kernels" in self.switches else layer(x)

    def attend(self, queries, keys, values, cache):
        """存进缓存，再做因果注意力。

        参数:
            queries, keys, values (Tensor): 新词元的，(b, h, t, k)
            cache (ConcatCache 或 PreallocatedCache): 这一层的缓存

        返回:
            Tensor: (b, h, t, k)
        """
        keys, values = cache.update(keys, values)  # (b, h, s, k)
        t, s = queries.shape[2], keys.shape[2]
        if "sdpa" in self.switches:
            # 一次送进几个时才要掩码。is_causal 的掩码从左上角画起，缓存里已有词元就画错了：所以只许 t = 1，或者缓存是空的。
            return F.scaled_dot_product_attention(queries, keys, values, is_causal=t > 1)  # (b, h, t, k)
        scores = queries @ keys.transpose(2, 3) / queries.shape[3] ** 0.5  # (b, h, t, s)
        future = torch.ones(t, s, dtype=torch.bool).triu(s - t + 1)  # (t, s)　键在查询的后面
        return torch.softmax(scores.masked_fill(future, -torch.inf), dim=-1) @ values  # (b, h, t, k)

    @torch.inference_mode()
    def forward(self, ids):
        """前向传播，新词元接在缓存后面。

        参数:
            ids (Tensor): 新词元的编号，(b, t)；缓存不是空的时候，t 是 1

        返回:
            Tensor: logits，(b, t, V) 或 (b, 1, V)：开了 "last"，就只有最后一个位置
        """
        model, (b, t), offset = self.model, ids.shape, self.caches[0].length
        x = model.tok_emb(ids) + model.pos_emb(torch.arange(offset, offset + t))  # (b, t, d)
        for block, fused, cache in zip(model.trf_blocks, self.fused, self.caches):
            # ① 注意力。
            att, normed = block.att, self.norm(block.norm1, x)
            qkv = fused(normed).chunk(3, dim=-1) if "qkv" in self.switches else [linear(normed) for linear in (att.W_query, att.W_key, att.W_value)]
            heads = [each.view(b, t, att.num_heads, att.head_dim).transpose(1, 2) for each in qkv]  # 每项 (b, h, t, k)
            context = self.attend(*heads, cache)  # (b, h, t, k)
            x = x + att.out_proj(context.transpose(1, 2).reshape(b, t, -1))  # (b, t, d)
            # ② 前馈网络。
            up, gelu, down = block.ff.layers
            hidden = up(self.norm(block.norm2, x))  # (b, t, 4d)
            x = x + down(F.gelu(hidden, approximate="tanh") if "kernels" in self.switches else gelu(hidden))
        # 提示词的前面那些位置，下一个词元早就知道了；输出层又是最大的一个矩阵，只算最后一个位置就够。
        return model.out_head(self.norm(model.final_norm, x[:, -1:] if "last" in self.switches else x))

    def start(self, ids):
        """清空缓存，送进提示词，得到第一个新词元。

        参数:
            ids (Tensor): 提示词，(b, t)
        """
        for cache in self.caches:
            cache.reset()
        self.next = self.forward(ids)[:, -1].argmax(dim=-1, keepdim=True)  # (b, 1)

    def step(self):
        """再写一个词元。"""
        self.next = self.forward(self.next)[:, -1].argmax(dim=-1, keepdim=True)  # (b, 1)


def draw(rows, limits, path):
    """一行一级：点是中位数，横线是四分位，红线是内存读取速度定下的上限。

    参数:
        rows (dict): 名字 → 每个词元的秒数
        limits (dict): 名字 → 上限（词元/秒），没有上限的不在里面
        path (Path): 图片写到哪里
    """
    figure, axis = plt.subplots(figsize=(7.6, 0.4 * len(rows) + 1.4), layout="constrained")
    for y, (name, seconds) in enumerate(rows.items()):
        low, middle, high = speeds(seconds)
        axis.plot([low, high], [y, y], color="tab:blue", linewidth=5, alpha=0.4, solid_capstyle="butt")
        axis.plot(middle, y, "o", color="tab:blue")
        axis.annotate(f"{middle:.1f}", (high, y), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9)
        if name in limits:
            axis.plot([limits[name]] * 2, [y - 0.35, y + 0.35], color="tab:red", label="上限：内存读取速度 ÷ 权重的字节数 × b" if name == list(limits)[0] else None)
    axis.set_yticks(range(len(rows)), list(rows))
    axis.invert_yaxis()
    axis.set(xscale="log", xlabel="词元/秒（对数刻度，批里的各句加起来）")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.margins(x=0.12)
    figure.legend(loc="outside lower center", fontsize=8)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def main():
    """搭好每一级，一步一步轮流走，打印梯子。"""
    parser = argparse.ArgumentParser(description="实验　写一个词元要多久，一次只改一样")
    parser.add_argument("--threads", type=int, default=1, help="几个线程（默认：1，别的程序忙不忙都量得准）")
    parser.add_argument("--prompt-tokens", type=int, default=64, help="提示词几个词元（默认：64）")
    parser.add_argument("--new-tokens", type=int, default=48, help="生成几个词元（默认：48）")
    parser.add_argument("--quick", action="store_true", help="小模型（4 层、d = 256、V = 4096），少几个词元：看流程，不下结论")
    args = parser.parse_args()
    config, prompt_tokens, new_tokens = (QUICK_CONFIG, 16, 12) if args.quick else (GPT_CONFIG_124M, args.prompt_tokens, args.new_tokens)
    for name, low, high in [("threads", 1, 256), ("prompt_tokens", 2, 512), ("new_tokens", 4, 512)]:
        if not low <= getattr(args, name) <= high:
            parser.error(f"--{name.replace('_', '-')} 应在 {low} 到 {high} 之间，不能是 {getattr(args, name)}")
    torch.set_num_threads(args.threads)
    torch.manual_seed(123)
    model = GPTModel(config).eval()
    capacity, read = prompt_tokens + new_tokens + 1, 4 * (config["n_layers"] * 12 * config["emb_dim"] ** 2 + config["vocab_size"] * config["emb_dim"])
    print(f"{config['n_layers']} 层，d = {config['emb_dim']}，权重随机，{args.threads} 个线程，每个词元要读 {read / 1e6:.0f} MB 权重", flush=True)
    print(f"提示词 {prompt_tokens} 个词元，生成 {new_tokens} 个", flush=True)

    # ① 每一级：名字 → 批大小、解码器。
    fused, names = fuse_qkv(model), list(SWITCHES)
    ladder = {"＋KV 缓存": (1, Decoder(model, fused, set(), capacity))}
    ladder |= {SWITCHES[name]: (1, Decoder(model, fused, set(names[: i + 1]), capacity)) for i, name in enumerate(names)}
    ladder |= {f"＋批大小 {b}": (b, Decoder(model, fused, set(names), capacity)) for b in BATCHES}
    ids = torch.randint(config["vocab_size"], (max(BATCHES), prompt_tokens + 8))  # (b, t)
    prompts = {name: ids[:b, :prompt_tokens] for name, (b, _) in ladder.items()}

    # ② 轮流量：提示词几遍；然后一人写一个词元，轮着来。
    starts = {name: (lambda decoder=decoder, prompt=prompts[name]: decoder.start(prompt)) for name, (_, decoder) in ladder.items()}
    prefill = in_turn(starts, 4 if args.quick else 6, "提示词")
    block = torch.ones((32 if args.quick else 512) * 2**18)  # 一大块数，加起来比读内存快得多，量到的就是读
    seconds = in_turn({name: decoder.step for name, (_, decoder) in ladder.items()} | {"读内存": block.sum}, new_tokens, "写词元")
    bandwidth = block.nbytes / statistics.median(seconds.pop("读内存"))
    per_token = {name: [value / ladder[name][0] for value in values[2:]] for name, values in seconds.items()}  # 头两步是热身
    middle = torch.randint(config["vocab_size"], (1, prompt_tokens + new_tokens // 2))  # 不缓存太慢，只量正中间的那一步，正好是平均
    ladder["＋KV 缓存"][1].start(prompts["＋KV 缓存"])
    with torch.inference_mode():
        bottom = in_turn({"不缓存": lambda: model(middle)[:, -1].argmax(), "＋KV 缓存": ladder["＋KV 缓存"][1].step}, 8, "不缓存")

    # ③ 打印梯子：每一级与此前最快的一级比。
    rows = {"不缓存（书上的写法）": bottom["不缓存"]} | per_token
    limits = {name: b * bandwidth / read for name, (b, _) in ladder.items()}
    print(f"\n内存读取 {bandwidth / 1e9:.1f} GB/s（把 {block.nbytes / 2**20:.0f} MB 加起来）：上限是每秒 {bandwidth / read:.1f} 个词元 × 批大小")
    print("词元/秒（一半的测量在这之间）　　占上限　提示词毫秒　比此前最快的")
    print(f"{speeds(bottom['不缓存'])[1]:7.1f}　　　　　　　　　　　　　　　　　　　　　　　　　不缓存（书上的写法）")
    best, gains = "＋KV 缓存", {"＋KV 缓存": compare(bottom["不缓存"], bottom["＋KV 缓存"])}
    for name, values in per_token.items():
        if name not in gains:
            gains[name] = compare(per_token[best], values)
            best = name if gains[name][0] > 1 else best
        low, half, high = speeds(values)
        ratio, word = gains[name]
        verdict = f"{ratio:6.2f} 倍" + ("　　　" if args.quick else f"，{word}".ljust(4, "　"))
        print(f"{half:7.1f}（{low:6.1f} … {high:6.1f}）{half / limits[name]:10.0%}{statistics.median(prefill[name][1:]) * 1e3:10.0f}　　{verdict}　{name}")
    if any(speeds(per_token[name])[1] > limits[name] for name in limits):
        print("占上限超过 100%：权重有一部分留在 CPU 的缓存里，不必每次都到内存去读，这个上限就管不住它。")
    draw(rows, limits, OUTPUTS / "fast_decode.png")
    print(f"图片已写到 {OUTPUTS / 'fast_decode.png'}")

    print("\n所以（都是这一次量的" + ("；--quick 模型太小、次数太少：看流程，不下结论）：" if args.quick else "）："))
    single = [name for name, (b, _) in ladder.items() if b == 1]
    ratio, word = compare(prefill["＋KV 缓存"][1:], prefill[SWITCHES["last"]][1:])
    print(f"  「只算最后一个 logits」：提示词快 {ratio:.2f} 倍" + ("。" if args.quick else f"，{word}；后面的词元{gains[SWITCHES['last']][1]}。"))
    if not args.quick:
        told = {word: [name for name in single[1:] if gains[name][1] == word] for word in ("更快", "更慢", "分不出")}
        print("  缓存以后的各级，" + "；".join(f"{word}的：{'、'.join(found)}" for word, found in told.items() if found) + "。")
        print("  有了缓存，五个小改动合起来 {:.2f} 倍，{}；".format(*compare(per_token["＋KV 缓存"], per_token[single[-1]])), end="")
        print("、".join(f"批大小 {b} 再乘 {compare(per_token[single[-1]], per_token[f'＋批大小 {b}'])[0]:.1f} 倍" for b in BATCHES) + "（各句加起来；每一句自己并没有变快）。")

    print("\n这个数字对吗？")
    counted = 4 * (sum(linear.weight.numel() for linear in model.modules() if isinstance(linear, nn.Linear)))
    confirm(f"每个词元读 {read / 1e6:.1f} MB 权重 = 4 字节 ×（12 d² × 层数 + V d）", counted == read, "漏了输出层，或多算了词嵌入（词嵌入只查一行，不用全读）")
    with torch.inference_mode():
        expected = model(ids)[:, prompt_tokens - 1 : -1]  # (b, 8, V)　从提示词的最后一个位置起
    worst = {}
    for name, (b, decoder) in ladder.items():
        decoder.start(prompts[name])
        got = [decoder.next, *[decoder.forward(ids[:b, i : i + 1]) for i in range(prompt_tokens, prompt_tokens + 7)]]
        worst[name] = (torch.cat(got[1:], dim=1) - expected[:b, 1:]).abs().max().item() / expected.std().item()
    wrong = "、".join(name for name, error in worst.items() if error >= 1e-3)
    confirm(f"每一级的 logits 都与 GPTModel 相同（最多差标准差的 {max(worst.values()):.0e}）", not wrong, f"不只是换了实现，算的东西也变了：{wrong}")


if __name__ == "__main__":
    main()
