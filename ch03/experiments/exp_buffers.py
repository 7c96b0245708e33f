"""第 3 章 · 实验　因果掩码放在哪里：buffer、普通属性，还是现做现用？

问题：　掩码不训练，为什么不能写成普通属性 self.mask = …？登记成 buffer，又要付多少内存？
先猜：　GPT-2 有 12 层，每层一张 1024 × 1024 的掩码，一共多大？上下文长度变成 128K 呢？（先想 10 秒，再运行）
看点：　① 搬家之后，普通属性还留在原来的设备上，一算就报错；② buffer 会进检查点，于是换个上下文长度就读不进来，persistent=False 就没事；
        ③ 图：掩码随上下文长度的平方变大，比模型本身还大；④ 几层共用一张能省 12 倍，可是一搬家就又变成了 12 张。
动手改：1. 把 KEEP 那一项改成 "parameter": "普通属性"，self.mask = mask 那两行改成 if keep == "parameter": self.mask = nn.Parameter(mask, requires_grad=False)：
           它会搬家、会存盘，可也混进了 parameters()，②里的参数从 4.9 万变成 1,263 万；第二条自查变成 ✗。
        2. --context-length 4096：上下文长 4 倍，掩码从 12 MB 变成 192 MB，检查点也跟着变大。
        3. 把 register_buffer 那一行的 mask 换成 mask.float()（原书的写法），masked_fill_ 里换成 mask.bool()：检查点大 4 倍，最后两条自查变成 ✗。

运行：
    python ch03/experiments/exp_buffers.py            # 图片写到 ch03/outputs/
    约 5 秒，0.5 GB（2 核 CPU）

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　k 每个头的维度
"""

import argparse
import io
import statistics
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import zhplot  # noqa: F401　导入它，图上就能写中文

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
D, HEADS = 32, 2  # 掩码的大小与嵌入维度无关，取小的，跑得快
KEEP = {  # 掩码的四种放法：代号 → 怎么称呼
    "attribute": "普通属性",
    "buffer": "buffer（本章）",
    "not saved": "不存盘的 buffer",
    "on the fly": "现做现用",
}
GPT2_SMALL = 163_009_536  # 第 4 章 GPTModel 的参数量，作比较用


# region 改写 ch03/main: MultiHeadAttention
class MultiHeadAttention(nn.Module):
    """带因果掩码的多头自注意力，掩码有四种放法。（原版详解见 ch03/main/example_05_multihead_attention.py）"""

    def __init__(self, d_in, d_out, context_length, dropout, num_heads, qkv_bias=False, keep="buffer"):  # 改：多一个 keep，选放法
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
        # 改：原来只有 register_buffer 一种
        self.keep = keep
        if keep != "on the fly":  # 改：现做现用的，什么也不存
            mask = torch.triu(torch.ones(context_length, context_length, dtype=torch.bool), diagonal=1)
            if keep == "attribute":  # 改：nn.Module 只登记参数、buffer 和子模块；普通张量赋给它，它并不知道
                self.mask = mask
            else:  # 改：persistent=False 表示搬家时带上，存盘时不带
                self.register_buffer("mask", mask, persistent=keep == "buffer")

    def forward(self, x):
        b, t, _ = x.shape
        queries = self.W_query(x)  # (b, t, d_out)
        keys = self.W_key(x)  # (b, t, d_out)
        values = self.W_value(x)  # (b, t, d_out)
        queries = queries.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        keys = keys.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        values = values.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        scores = queries @ keys.transpose(2, 3)  # (b, h, t, t)
        # 改：现做现用：在 x 所在的设备上建一张正好 t × t 的，用完就扔；所以不用搬家，也没有最大长度
        mask = torch.triu(torch.ones(t, t, dtype=torch.bool, device=x.device), diagonal=1) if self.keep == "on the fly" else self.mask[:t, :t]
        scores.masked_fill_(mask, -torch.inf)  # 改：原来是 self.mask[:t, :t]
        weights = torch.softmax(scores / self.head_dim**0.5, dim=-1)  # (b, h, t, t)
        weights = self.dropout(weights)
        context = (weights @ values).transpose(1, 2)  # (b, t, h, k)
        context = context.contiguous().view(b, t, self.d_out)  # (b, t, d_out)
        return self.out_proj(context)


# endregion


def stack(keep, layers, context_length):
    """几层一样的注意力；种子相同，所以不论掩码怎么放，权重都一样。

    参数:
        keep (str): 掩码的放法，KEEP 的键
        layers (int): 几层
        context_length (int): 上下文长度

    返回:
        nn.Sequential: 几层 MultiHeadAttention
    """
    torch.manual_seed(123)
    return nn.Sequential(*[MultiHeadAttention(D, D, context_length, 0.0, HEADS, keep=keep) for _ in range(layers)])


def move(model, device):
    """搬家，再在新家算一次。

    参数:
        model (nn.Module): 几层注意力
        device (str): 搬到哪里；"meta" 是只记形状、不存数据的假设备，每台电脑都有，搬家的规矩与真的一样

    返回:
        tuple[str, str]: 掩码搬到了哪里；算得出来吗（出错时是 PyTorch 的原话）
    """
    model = model.to(device)
    where = device if model[0].keep == "on the fly" else model[0].mask.device.type  # 现做的，总在输入所在的设备上做
    try:
        model(torch.zeros(1, 4, D, device=device))
        return where, "能算"
    except RuntimeError as error:
        return where, f"一算就报 RuntimeError：{str(error).splitlines()[0]}"


def saved_size(model):
    """存成检查点有多大。

    参数:
        model (nn.Module): 模型

    返回:
        int: 字节数
    """
    file = io.BytesIO()  # 假装是个文件，其实在内存里
    torch.save(model.state_dict(), file)
    return file.tell()


def mask_bytes(model):
    """一个模型的掩码一共占多少内存；几层共用的一块只算一次。

    参数:
        model (nn.Module): 几层注意力

    返回:
        int: 字节数
    """
    masks = [layer.mask for layer in model if layer.keep != "on the fly"]
    return sum({mask.data_ptr(): mask.nbytes for mask in masks}.values())


# region 沿用 ch03/experiments/exp_attention_complexity.py: take_turns, quartiles, compare
def take_turns(works, rounds, device=None):
    """轮流计时：每一轮把几份各做一遍，电脑忽快忽慢时大家一起快慢，比较才公平。（详解见 ch03/experiments/exp_attention_complexity.py）"""
    on_gpu, times = device is not None and device.type != "cpu", {name: [] for name in works}
    clock = time.perf_counter if on_gpu or torch.get_num_threads() > 1 else time.process_time
    for turn in range(rounds + 1):
        for name, work in works.items():
            start = clock()
            work()
            if on_gpu:
                torch.get_device_module(device).synchronize()
            if turn:
                times[name].append(clock() - start)
    return times


def quartiles(values):
    """量了许多次，中间一半落在哪里。只报一个平均，看不出机器忙不忙。（详解见 ch03/experiments/exp_attention_complexity.py）"""
    return tuple(statistics.quantiles(values, n=4, method="inclusive"))


def compare(values, reference):
    """甲是乙的几倍；两边中间的一半重叠了，就说分不出。（详解见 ch03/experiments/exp_attention_complexity.py）"""
    (low, middle, high), (floor, center, ceiling) = quartiles(values), quartiles(reference)
    ratio = f"{middle / center:.2f} 倍"
    return ratio if high < floor or low > ceiling else f"分不出（中位数是 {ratio}）"


# endregion


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def draw(layers, path):
    """画掩码占的内存随上下文长度怎样变，双对数坐标，横线是模型本身。

    参数:
        layers (int): 几层
        path (Path): 图片写到哪里
    """
    lengths = [2**i for i in range(8, 18)]
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for copies, size, color, label in [
        (layers, 4, "#c0392b", f"{layers} 层，各一张 float32（原书）"),
        (layers, 1, "#d9822b", f"{layers} 层，各一张 bool（本章）"),
        (1, 1, "#2f6fab", "共用一张，或现做一张 bool"),
    ]:
        axis.plot(lengths, [copies * size * t * t / 2**20 for t in lengths], marker="o", markersize=4, color=color, label=label)
    axis.axhline(GPT2_SMALL * 4 / 2**20, color="0.5", linestyle="--", label="GPT-2 small 的全部参数")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(lengths, [f"{t}" if t < 1024 else f"{t // 1024}K" for t in lengths])
    axis.set_xlabel("上下文长度")
    axis.set_ylabel("掩码占的内存（MB）")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    """依次看搬家、存盘、读盘、内存、用时。"""
    parser = argparse.ArgumentParser(description="实验　因果掩码放在哪里")
    parser.add_argument("--layers", type=int, default=12, help="几层（默认：12，与 GPT-2 small 相同）")
    parser.add_argument("--context-length", type=int, default=1024, help="上下文长度（默认：1024，与 GPT-2 small 相同）")
    args = parser.parse_args()
    if not 2 <= args.layers <= 1000:
        parser.error(f"--layers 应在 2 到 1000 之间，不能是 {args.layers}")
    if not 8 <= args.context_length <= 8192:
        parser.error(f"--context-length 应在 8 到 8192 之间，不能是 {args.context_length}")
    layers, context = args.layers, args.context_length
    if layers * context * context > 2**28:  # 下面要建好几份来比较
        parser.error(f"{layers} 层、上下文长度 {context}，掩码就要 {layers * context * context / 2**20:,.0f} MB，请改小（256 MB 以内）")

    device = "mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "meta"
    print(f'① 搬家：model.to("{device}")' + ("（没有 GPU，用只记形状的假设备代替：看得出谁没搬走，只是不报错）" if device == "meta" else ""))
    moved = {}
    for keep, name in KEEP.items():
        moved[keep] = move(stack(keep, 2, 8), device)
        print(f"  {name}　掩码在 {moved[keep][0]}" + ("" if device == "meta" else f"，{moved[keep][1]}"))

    print(f"\n② 存盘：{layers} 层，上下文长度 {context}，存成检查点")
    models = {keep: stack(keep, layers, context) for keep in KEEP}
    sizes = {keep: saved_size(model) for keep, model in models.items()}
    for keep, name in KEEP.items():
        count, saved = sum(p.numel() for p in models[keep].parameters()), "0.mask" in models[keep].state_dict()
        print(f"  {name}　检查点 {sizes[keep] / 2**20:6.2f} MB　参数 {count:,} 个　状态字典里有掩码：{'有' if saved else '没有'}")

    print(f"\n③ 读盘：上下文长度 {context} 的检查点，读进上下文长度 {2 * context} 的模型")
    loaded = {}
    for keep in ("buffer", "not saved"):
        longer = stack(keep, 2, 2 * context)
        with torch.no_grad():
            longer[0].W_query.weight.zero_()  # 先弄乱，读进来之后才看得出真的读了
        try:
            longer.load_state_dict(models[keep][:2].state_dict())
            loaded[keep] = torch.equal(longer[0].W_query.weight, models[keep][0].W_query.weight)
            print(f"  {KEEP[keep]}　读进来了，权重相同：{'是' if loaded[keep] else '否'}")
        except RuntimeError as error:
            loaded[keep] = False
            print(f"  {KEEP[keep]}　RuntimeError：{str(error).splitlines()[1].split(': copying')[0].strip()} …")

    print("\n④ 内存")
    measured = {keep: mask_bytes(model) for keep, model in models.items()}
    shared = stack("not saved", layers, context)
    for layer in shared:
        layer.mask = shared[0].mask  # 同一个张量，登记在每一层
    together = mask_bytes(shared)
    moved_shared = shared.to("meta")
    apart = len({id(layer.mask) for layer in moved_shared})
    each = measured["buffer"] / 2**20
    print(f"  {layers} 层各一张 bool：{each:,.0f} MB；原书的 float32 大 4 倍：{4 * each:,.0f} MB；现做现用：{measured['on the fly']} MB")
    print(f"  {layers} 层共用一张：{together / 2**20:,.1f} MB，可是搬家（.to）之后又成了 {apart} 张：每个 buffer 各搬各的")
    path = OUTPUTS / "buffers.png"
    draw(layers, path)
    print(f"  图已写到 {path}")
    t = min(context, 512)
    x = torch.randn(1, t, D)  # (b, t, d)
    torch.set_num_threads(1)
    with torch.no_grad():
        times = take_turns({keep: lambda keep=keep: models[keep](x) for keep in ("buffer", "on the fly")}, 15)
    cells = [f"{KEEP[keep]} {middle * 1e3:.1f} 毫秒（四分位 {low * 1e3:.1f}–{high * 1e3:.1f}）" for keep, (low, middle, high) in ((keep, quartiles(values)) for keep, values in times.items())]
    print(f"\n⑤ 用时　{layers} 层前向传播，轮流量 15 次：{'，'.join(cells)}")
    print(f"  现做的是存着的 {compare(times['on the fly'], times['buffer'])}；嵌入维度只有 {D}，真实的模型里，做掩码占的比例更小")

    longest = next(length for length in (2**i for i in range(5, 40)) if layers * length * length > GPT2_SMALL * 4)
    print(f"\n所以：{layers} 层的 bool 掩码，上下文到 {longest // 1024}K 就比 GPT-2 small 的全部参数还大。长上下文的模型都不存掩码：")
    print("　　　现做现用，或者用 SDPA 的 is_causal=True，连做都不做（见 exp_mha_variants.py、exp_attention_complexity.py）。")

    print("\n这个数字对吗？")
    with torch.no_grad():
        outputs = [model(x) for model in models.values()]
    confirm("四种放法，输出逐位相同", all(torch.equal(outputs[0], each) for each in outputs), "现做的掩码方向反了，或 diagonal 不是 1")
    stayed = [keep for keep, (where, result) in moved.items() if where != device or result != "能算"]
    confirm("搬家之后，只有普通属性的掩码没跟过来", stayed == ["attribute"], "普通属性被登记成了 buffer")
    confirm("换个上下文长度，存盘的 buffer 读不进来，不存盘的可以", loaded == {"buffer": False, "not saved": True}, "persistent 写反了")
    confirm(f"掩码的内存 = 层数 × t² = {layers * context * context:,} 字节（每个 bool 1 字节）", measured["buffer"] == layers * context * context, "掩码不是 bool")
    extra = sizes["buffer"] - sizes["not saved"]
    confirm(f"检查点大出来的就是掩码：{extra:,} 字节（另有每张几百字节的名字和格式）", 0 <= extra - layers * context * context < 4096 * layers, "掩码不是 bool，或没有存盘")


if __name__ == "__main__":
    main()
