"""第 5 章 · 实验　几个进程一起训练：DDP 与 FSDP2

问题：　同一次训练让 1 个、2 个、4 个进程做，损失还一样吗？每一步网上走多少字节，每个进程存多少？练到一半死了一个，怎么办？
先猜：　进程数翻倍，DDP 每个进程发出的字节也翻倍吗？FSDP 每个进程存的少了，网上走的会多几成？（先想 10 秒，再运行）
看点：　① 表：第 1 步的梯度、最后的损失，与一个进程差在第几位；② 左图：发出的字节，量的与公式；gloo 的 FSDP 为什么比公式多；
        ③ 右图：每个进程存的，DDP 一点不省，FSDP 平分；④ 杀死一个进程：从哪一步接着练，损失与没断过差多少；换一个进程数接着练呢？
动手改：1. 把 train 里的 inputs[rank::world] 改成 inputs[: BATCH // world]，targets 也一样，加 --quick 运行：每个进程都拿同一份，不报错，损失和梯度的自查变成 ✗。
        2. 把 build 里的 fully_shard(block, mesh=mesh) 那一行改成 pass，加 --quick 运行：只包最外面一层，前向时一次收齐全部参数；损失不变，网上走的少了一份，为什么？
        3. 把 save 里的 "optim": optim_state 去掉，load 里的 "optim": optim_state 也去掉，加 --quick 运行：接着练，AdamW 的动量从 0 起，自查变成 ✗。

运行：
    python ch05/experiments/exp_distributed.py             # 1、2、4 个进程各练一遍；图片写到 ch05/outputs/
    python ch05/experiments/exp_distributed.py --plan      # 只算不练：同一个脚本放到 8、64、1,024 块显卡上，要多久，多少钱，多久坏一次
    torchrun --nproc_per_node=2 --max-restarts=3 ch05/experiments/exp_distributed.py --train --mode fsdp --folder 检查点的文件夹
    约 1 分钟，每个进程 0.4 GB（2 核 CPU）；--quick 约 20 秒，只比 1 个和 2 个进程

有 CUDA 显卡时，一个进程一块，用 nccl；没有就都在 CPU 上，用 gloo。几台机器，也只是 torchrun 的参数不同：--nnodes=2 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500（HOST 是头一台的地址）。

形状记号：b 批大小　t 序列长度　d 嵌入维度　h 头数　k 每个头的维度　V 词表大小（这里词元就是字节）　w 进程数　n 这个进程的行数
"""

import argparse
import json
import math
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn as nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel as DDP
from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"

# 改这里
CONFIG = {"vocab_size": 256, "context_length": 128, "emb_dim": 128, "n_heads": 4, "n_layers": 4, "drop_rate": 0.0, "qkv_bias": False}
BATCH, LEARNING_RATE, SAVE_EVERY = 8, 1e-3, 5  # 一批几行（所有进程合起来）；几步存一次
# --plan：训练多大的模型（参数个数），用几块显卡；词元按 20 个配一个参数（Chinchilla）
PLANS = [(1.3e9, 8), (7e9, 64), (70e9, 1024)]
GPU = {
    "每秒的运算次数": 989e12,  # H100 的 bf16，厂家的数
    "用上的比例": 0.40,  # Llama 3 405B 报告的是 38 到 43%
    "内存": 80e9,
    "网络，字节每秒": 50e9,  # 每块显卡一张 400 Gb/s 的网卡
    "存储，字节每秒": 2e9,  # 每台（8 块）写检查点
    "一块一小时的钱": 2.5,  # 美元，租的
    "一块多少小时坏一次": 50_000,  # Llama 3：16,384 块、54 天，意外中断 419 次
}
MICRO_TOKENS = 16_384  # 每块显卡一步多少词元


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


# region 沿用 ch06/experiments/exp_finetune_ablation.py: wide
def wide(text, width):
    """补空格到一样宽：汉字占两格。（详解见 ch06/experiments/exp_finetune_ablation.py）"""
    return text + " " * (width - len(text.encode("gbk")))


# endregion


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


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


def global_batch(ids, step):
    """第 step 步的一整批。只看步数，不看有几个进程：换了进程数，数据的次序不变，接着练也不用另存位置。

    参数:
        ids (Tensor): 全部的词元编号，(N,)
        step (int): 第几步

    返回:
        tuple[Tensor, Tensor]: 输入和目标，都是 (b, t)
    """
    generator = torch.Generator().manual_seed(step)
    t = CONFIG["context_length"]
    starts = torch.randint(len(ids) - t, (BATCH,), generator=generator)  # (b,)
    rows = ids[starts[:, None] + torch.arange(t + 1)]  # (b, t + 1)
    return rows[:, :-1], rows[:, 1:]


def build(mode, device):
    """建模型，包上 DDP 或 FSDP2。各进程的种子相同：FSDP 切的是自己这一份里属于自己的那段，不会替你广播。

    参数:
        mode (str): none、ddp、fsdp
        device (torch.device): 自己的设备

    返回:
        nn.Module: (n, t) → (n, t, V)
    """
    torch.manual_seed(123)
    model = GPTModel(CONFIG).to(device)
    if mode == "ddp":
        return DDP(model)  # 反向时，梯度一算好就开始取平均，一边算一边传
    if mode == "fsdp":
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for block in model.trf_blocks:
            fully_shard(block, mesh=mesh)  # 一块是一份：用到了才收齐，用完就放掉自己以外的
        fully_shard(model, mesh=mesh)  # 剩下的（嵌入、输出层）是最后一份
    return model


def save(folder, step, model, optimizer):
    """存检查点：每个进程只写自己的那一份。最后才写 .metadata，没有它的就是没写完的。

    参数:
        folder (Path): 检查点的文件夹
        step (int): 练完了第几步
        model (nn.Module): 模型
        optimizer (Optimizer): 优化器
    """
    model_state, optim_state = get_state_dict(model, optimizer)  # 名字不带 module.，与怎样切无关
    dcp.save({"model": model_state, "optim": optim_state}, checkpoint_id=folder / f"step-{step:06d}")


def load(folder, model, optimizer):
    """找最新的、写完了的检查点，装上。存的时候有几个进程，现在有几个，都可以：各自去取自己要的那段。

    参数:
        folder (Path): 检查点的文件夹
        model, optimizer (nn.Module, Optimizer): 就地装上

    返回:
        int: 练完了第几步；没有检查点是 0
    """
    whole = sorted(path.parent for path in folder.glob("step-*/.metadata"))
    if not whole:
        return 0
    model_state, optim_state = get_state_dict(model, optimizer)
    state = {"model": model_state, "optim": optim_state}
    dcp.load(state, checkpoint_id=whole[-1])
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state.get("optim", optim_state))
    return int(whole[-1].name.removeprefix("step-"))


def whole_tensor(tensor):
    """切开的收齐（每个进程都要调用），没切的原样返回。"""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def stored_bytes(model, optimizer):
    """这个进程存了几个字节：参数、梯度、AdamW 的两份动量，只数自己的那一段。

    参数:
        model (nn.Module): 模型，梯度已经有了
        optimizer (Optimizer): 走过一步的优化器

    返回:
        int: 字节数
    """
    tensors = [p for p in model.parameters()] + [p.grad for p in model.parameters()]
    tensors += [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    return sum(local.numel() * local.element_size() for local in (x.to_local() if isinstance(x, DTensor) else x for x in tensors))


def sent_on_loopback():
    """本机的进程之间一共传了多少字节，从开机数起。

    返回:
        int 或 None: 只有 Linux 数得到，别的系统是 None
    """
    try:
        lines = Path("/proc/net/dev").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next(int(line.split(":")[1].split()[0]) for line in lines if line.strip().startswith("lo:"))


def train(arguments):
    """torchrun 启动的每个进程都运行它。

    参数:
        arguments (Namespace): mode、steps、folder、report、kill

    异常:
        SystemExit: 一批的行数平分不了；损失是 nan 或 inf
    """
    if platform.system() == "Windows":
        os.environ["USE_LIBUV"] = "0"  # Windows 版 PyTorch 编译时没有带 libuv
    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    use_cuda = torch.cuda.is_available() and int(os.environ["LOCAL_WORLD_SIZE"]) <= torch.cuda.device_count()
    device = torch.device("cuda", local) if use_cuda else torch.device("cpu")
    torch.set_num_threads(1)  # 几个进程抢几个核，线程多了反而慢
    world = int(os.environ["WORLD_SIZE"])
    # 各进程在一块公用的牌子（store）上写下自己的地址。重来的时候，死掉的那些地址还在上面，gloo 会照着去连，连不上；所以第几次重来，写在第几栏。
    board = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    board = dist.PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], board)
    dist.init_process_group("nccl" if use_cuda else "gloo", store=board, rank=rank, world_size=world)
    if BATCH % world:
        raise SystemExit(f"一批 {BATCH} 行，平分不了给 {world} 个进程：各进程的行数不同，梯度的平均就不是全批的平均")
    ids = torch.frombuffer(bytearray(find_data("the-verdict.txt", "story-en.txt").read_bytes()), dtype=torch.uint8).long()
    model = build(arguments.mode, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1)
    done = load(arguments.folder, model, optimizer)
    history = [{"world": world, "start": done}]
    for step in range(done + 1, arguments.steps + 1):
        dist.barrier()
        before, begun = sent_on_loopback(), time.perf_counter()
        inputs, targets = global_batch(ids, step)
        inputs, targets = inputs[rank::world].to(device), targets[rank::world].to(device)  # (n, t)　像发牌，每个进程拿自己的几行
        logits = model(inputs)  # (n, t, V)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()  # 通信都藏在这一行里：DDP 取平均，FSDP 收齐参数、切开梯度
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total = loss.detach().clone()
        dist.all_reduce(total)  # 各进程的损失加起来：人人得到同一个数，要停就一起停，没有谁留下来等
        mean = total.item() / world
        if not math.isfinite(mean):
            raise SystemExit(f"第 {step} 步的损失是 {mean}，停下；最后一个好的检查点在 {arguments.folder}")
        dist.barrier()
        sent = None if before is None else (sent_on_loopback() - before) / world
        history.append({"step": step, "loss": mean, "seconds": time.perf_counter() - begun, "sent": sent})
        if arguments.kill == f"{rank}:{step}" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))  # 演示：死得毫无准备
        if step == 1 and arguments.report:
            gradients = {name.removeprefix("module."): whole_tensor(p.grad).cpu() for name, p in model.named_parameters()}
            history[0]["stored"] = stored_bytes(model, optimizer)
            if rank == 0:
                torch.save(gradients, arguments.report.with_suffix(".pt"))
        if step % SAVE_EVERY == 0:
            save(arguments.folder, step, model, optimizer)
        if rank == 0 and not arguments.report:
            print(f"第 {step} 步　损失 {mean:.4f}　{BATCH * CONFIG['context_length'] / history[-1]['seconds']:,.0f} 词元/秒", flush=True)
    if rank == 0 and arguments.report:
        arguments.report.write_text(json.dumps(history), encoding="utf-8")
    dist.barrier()  # 都写完了才散
    sys.stdout.flush()
    os._exit(0)  # 不用 destroy_process_group：gloo 收尾时，主线程拿着 GIL 等它的线程，它的线程有时也在等 GIL，就卡住了（PyTorch 2.13）


def launch(world, mode, steps, folder, report, kill="", restarts=0):
    """用 torchrun 起 world 个进程，练完了返回记下的。

    参数:
        world, mode, steps (int, str, int): 几个进程，怎样切，练到第几步
        folder, report (Path): 检查点的文件夹；结果写到哪里
        kill, restarts (str, int): 写成 1:7，就是 1 号进程练到第 7 步杀死它；死了最多重来几次

    返回:
        list[dict]: 头一项是几个进程、从哪一步接着练，后面每步一项

    异常:
        RuntimeError: torchrun 失败了
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world}", f"--max-restarts={restarts}", __file__]
    command += ["--train", "--mode", mode, "--steps", str(steps), "--folder", str(folder), "--report", str(report), "--kill", kill]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace", env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode or not report.is_file():
        raise RuntimeError(f"{world} 个进程没有练完：" + "\n".join(done.stderr.strip().splitlines()[-15:]))
    return json.loads(report.read_text(encoding="utf-8"))


def wire_bytes(size, world, mode):
    """每个进程一步发出几个字节，环形（ring）的做法。取平均：切成 w 段转两圈；收齐或切开：转一圈。

    参数:
        size (float): 全部参数（也是全部梯度）的字节数
        world (int): 几个进程
        mode (str): ddp：梯度取平均，转两圈；fsdp：前向、反向各收齐一次参数，切开一次梯度，三圈

    返回:
        float: 字节数
    """
    return {"none": 0, "ddp": 2, "fsdp": 3}[mode] * (world - 1) / world * size


def state_bytes(n_params, world, mode):
    """每个进程存多少：参数、梯度、AdamW 的两份动量，fp32 各 4 字节。bf16 混合精度也是 16：2 ＋ 2，另有 fp32 的 4 ＋ 4 ＋ 4。

    参数:
        n_params (float): 参数个数
        world (int): 几个进程
        mode (str): none 和 ddp 各存一整份，fsdp 平分

    返回:
        float: 字节数
    """
    return 16 * n_params / (world if mode == "fsdp" else 1)


def plan(n_params, world):
    """FSDP 在 world 块显卡上训练 n_params 个参数：时间、钱、检查点、坏了要付的。

    参数:
        n_params, world (float, int): 参数个数，几块显卡

    返回:
        dict: 各项，单位见 print_plan
    """
    compute = 6 * n_params * MICRO_TOKENS / (GPU["每秒的运算次数"] * GPU["用上的比例"])  # 一个词元，一个参数：前向 2 次，反向 4 次
    network = wire_bytes(2 * n_params, world, "fsdp") / GPU["网络，字节每秒"]  # bf16 传，2 字节
    steps = 20 * n_params / (MICRO_TOKENS * world)
    checkpoint = 12 * n_params  # fp32 的参数和两份动量
    writing = checkpoint / (GPU["存储，字节每秒"] * max(1, world // 8))
    between = GPU["一块多少小时坏一次"] / world * 3600
    interval = math.sqrt(2 * writing * between)  # 存得太勤，时间花在写上；太疏，坏一次重练得多：两项之和最小处（Young，1974）
    lost = writing / interval + interval / (2 * between)
    seconds = steps * max(compute, network) / (1 - lost)  # 算和传叠在一起，慢的那个说了算
    return {
        "存的": state_bytes(n_params, world, "fsdp"),
        "DDP 要存的": state_bytes(n_params, world, "ddp"),
        "算": compute,
        "传": network,
        "全批": MICRO_TOKENS * world,
        "天": seconds / 86400,
        "钱": seconds / 3600 * world * GPU["一块一小时的钱"],
        "检查点": checkpoint,
        "写": writing,
        "坏一次": between / 3600,
        "间隔": interval / 60,
        "白费": lost,
    }


def print_plan():
    """印出 PLANS 里每一种的账。"""
    found = [plan(*case) for case in PLANS]
    print("同一个脚本，只换 torchrun 的参数。没有一个数是在这么多显卡上量的；公式里的字节数，--plan 以外的运行量过（2、4 个进程）\n")
    lines = [("模型", [f"{n / 1e9:g}B" for n, _ in PLANS]), ("显卡", [f"{w:,}" for _, w in PLANS])]
    for title, key, scale, unit in (
        ("每块存的状态", "存的", 1e9, "GB"), ("　换成 DDP", "DDP 要存的", 1e9, "GB"), ("一步，算", "算", 1, "秒"), ("一步，传", "传", 1, "秒"), ("一批", "全批", 1e6, "百万词元"),
        ("练完要", "天", 1, "天"), ("花", "钱", 1e3, "千美元"), ("检查点", "检查点", 1e9, "GB"), ("写一次", "写", 1, "秒"),
        ("平均多久坏一块", "坏一次", 1, "小时"), ("多久存一次", "间隔", 1, "分钟"), ("坏掉、写盘白费的", "白费", 0.01, "%"),
    ):  # fmt: skip
        lines.append((f"{title}（{unit}）", [f"{each[key] / scale:,.2f}" for each in found]))
    for title, values in lines:
        print(wide(title, 24) + "".join(f"{value:>12}" for value in values))
    for (n, w), each in zip(PLANS, found):
        slow = "算" if each["算"] > each["传"] else "传"
        print(f"\n{n / 1e9:g}B、{w:,} 块：慢在{slow}（{each[slow]:.2f} 秒）；DDP {'放得下' if each['DDP 要存的'] < GPU['内存'] else '放不下'}，FSDP {'放得下' if each['存的'] < GPU['内存'] else '放不下'}（不算激活）", end="")
    print()


def draw(rows, path):
    """左：一步发出的字节，量的与公式；右：每个进程存的。

    参数:
        rows (list[dict]): 每种跑法一项
        path (Path): 图片
    """
    import matplotlib.pyplot as plt  # 只有画图的这个进程要，训练的那些不必等它
    import zhplot  # noqa: F401　导入它，图上就能写中文

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    names = [row["name"] for row in rows]
    spots = torch.arange(len(rows)).double()
    if all(row["sent"] is not None for row in rows):
        left.bar(spots - 0.2, [row["sent"] / 1e6 for row in rows], 0.4, label="量的")
    left.bar(spots + 0.2, [row["formula"] / 1e6 for row in rows], 0.4, label="公式", color="0.7")
    left.set(xticks=spots, xticklabels=names, ylabel="MB", title="每个进程一步发出多少")
    left.legend()
    right.bar(spots, [row["stored"] / 1e6 for row in rows], 0.5, color="C2")
    right.set(xticks=spots, xticklabels=names, ylabel="MB", title="每个进程存多少：参数、梯度、动量")
    figure.savefig(path, dpi=130)
    print(f"图片已写到 {path}")


def compare(steps, worlds, folder):
    """各种跑法各练一遍，与一个进程比；再杀死一个，再换进程数。

    参数:
        steps (int): 几步
        worlds (list[int]): 除了 1，还有几个进程
        folder (Path): 临时的文件夹

    返回:
        tuple[list[dict], dict]: 每种跑法一项；杀死、换进程数之后，最后一步的损失与没断过差多少
    """
    cases = [(1, "none")] + [(world, mode) for world in worlds for mode in ("ddp", "fsdp")]
    size = 4 * sum(p.numel() for p in GPTModel(CONFIG).parameters())
    kill_step = SAVE_EVERY + 2
    rows, runs, first = [], {}, {}
    with tqdm(total=len(cases) + 2, desc="运行", unit="种", leave=False, disable=None) as progress:
        for world, mode in cases:
            report = folder / f"{mode}{world}.json"
            head, *history = runs[world, mode] = launch(world, mode, steps, folder / f"{mode}{world}", report)
            gradients = torch.load(report.with_suffix(".pt"), weights_only=True)
            first = first or gradients  # 头一种是 1 个进程
            sent = [entry["sent"] for entry in history]
            rows.append(
                {
                    "name": "1 个进程" if mode == "none" else f"{mode.upper()}，{world} 个",
                    "loss": history[-1]["loss"],
                    "gap": max(abs(a["loss"] - b["loss"]) for a, b in zip(history, runs[1, "none"][1:])),
                    "gradient": max(((gradients[name] - first[name]).norm() / first[name].norm()).item() for name in first),
                    "sent": None if sent[0] is None else statistics.median(sent) if world > 1 else 0.0,
                    "formula": wire_bytes(size, world, mode),
                    "stored": head["stored"],
                    "expected": state_bytes(size / 4, world, mode),
                    "speed": BATCH * CONFIG["context_length"] / statistics.median(entry["seconds"] for entry in history),
                }
            )
            progress.update()
        killed = launch(2, "fsdp", steps, folder / "killed", folder / "killed.json", kill=f"1:{kill_step}", restarts=1)
        progress.update()
        changed = {"killed": killed}
        if max(worlds) > 2:
            part = f"step-{SAVE_EVERY:06d}"
            shutil.copytree(folder / "fsdp2" / part, folder / "moved" / part)
            changed["moved"] = launch(max(worlds), "fsdp", steps, folder / "moved", folder / "moved.json")
        progress.update()
    whole = {entry["step"]: entry["loss"] for entry in runs[2, "fsdp"][1:]}
    after = {}
    for name, (head, *history) in changed.items():
        after[name] = {"world": head["world"], "start": head["start"], "gap": max(abs(entry["loss"] - whole[entry["step"]]) for entry in history)}
    return rows, after | {"kill_step": kill_step}


def main():
    """比几种跑法；或算账；或（torchrun 启动的）练。"""
    parser = argparse.ArgumentParser(description="实验　几个进程一起训练：DDP 与 FSDP2")
    parser.add_argument("--plan", action="store_true", help="只算不练：8、64、1,024 块显卡的账")
    parser.add_argument("--train", action="store_true", help="由 torchrun 启动：真的练")
    parser.add_argument("--mode", choices=["none", "ddp", "fsdp"], default="fsdp", help="怎样切（默认：fsdp）")
    parser.add_argument("--steps", type=int, default=20, help="练到第几步（默认：20）")
    parser.add_argument("--folder", type=Path, default=OUTPUTS / "distributed", help="检查点的文件夹；里面有就接着练")
    parser.add_argument("--report", type=Path, help="结果写到哪个文件")
    parser.add_argument("--kill", default="", help="演示用：1:7 就是 1 号进程头一次练到第 7 步杀死自己")
    parser.add_argument("--quick", action="store_true", help="只比 1 个和 2 个进程，少练几步")
    args = parser.parse_args()
    if not args.train and args.steps < SAVE_EVERY + 2:
        parser.error(f"--steps 至少 {SAVE_EVERY + 2}，不能是 {args.steps}：要存过一次，才看得出怎样接着练")
    if args.plan:
        print_plan()
        return
    if args.train:
        if "RANK" not in os.environ:
            parser.error("--train 要由 torchrun 启动：torchrun --nproc_per_node=2 ch05/experiments/exp_distributed.py --train")
        train(args)
        return
    worlds = [2] if args.quick else [2, 4]
    OUTPUTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        rows, after = compare(8 if args.quick else args.steps, worlds, Path(folder))
    print(f"模型　{sum(p.numel() for p in GPTModel(CONFIG).parameters()):,} 个参数；全批 {BATCH} × {CONFIG['context_length']} 个词元；{os.cpu_count()} 核")
    titles = [("", 14), ("最后的损失", 12), ("与 1 个进程差", 15), ("梯度差", 10), ("存的 MB（公式）", 18), ("发出 MB（公式）", 18), ("词元/秒", 10)]
    print("\n" + "".join(wide(title, width) for title, width in titles))
    for row in rows:
        sent = "量不到" if row["sent"] is None else f"{row['sent'] / 1e6:.2f}"
        cells = [row["name"], f"{row['loss']:.6f}", f"{row['gap']:.0e}", f"{row['gradient']:.0e}", f"{row['stored'] / 1e6:.2f}（{row['expected'] / 1e6:.2f}）", f"{sent}（{row['formula'] / 1e6:.2f}）", f"{row['speed']:,.0f}"]
        print("".join(wide(cell, width) for cell, (_, width) in zip(cells, titles)))
    print(f"\n杀死：2 个进程练到第 {after['kill_step']} 步，1 号被杀死；torchrun 重来，从第 {after['killed']['start']} 步接着练，损失与没断过最多差 {after['killed']['gap']:.1e}")
    if "moved" in after:
        print(f"换进程数：2 个进程存的，{after['moved']['world']} 个进程接着练，损失与没断过最多差 {after['moved']['gap']:.1e}")
    draw(rows, OUTPUTS / ("distributed_quick.png" if args.quick else "distributed.png"))

    print("\n这个数字对吗？")
    confirm(f"每种跑法，每一步的损失与 1 个进程差不到 1e-4：{max(row['gap'] for row in rows):.0e}", max(row["gap"] for row in rows) < 1e-4, "各进程拿了同样的行，或行数不同，平均就不是全批的平均")
    confirm(f"第 1 步的梯度与 1 个进程差不到百万分之十：{max(row['gradient'] for row in rows):.0e}", max(row["gradient"] for row in rows) < 1e-5, "同上；或各进程的初始权重不同")
    confirm("每个进程存的，与公式相差不到 2%", all(abs(row["stored"] / row["expected"] - 1) < 0.02 for row in rows), "有的层没有 fully_shard；或形状除不尽，补齐了")
    measured = {row["name"]: row["sent"] / row["formula"] for row in rows[1:] if row["sent"] is not None}
    if measured:
        ddp = [ratio for name, ratio in measured.items() if name.startswith("DDP")]
        confirm(f"DDP 发出的，是公式的 {min(ddp):.2f} 到 {max(ddp):.2f} 倍", 0.95 < min(ddp) and max(ddp) < 1.15, "本机有别的程序也在走 127.0.0.1；或梯度不止传了一遍")
        fsdp = [ratio for name, ratio in measured.items() if name.startswith("FSDP")]
        confirm(f"FSDP 发出的，是公式的 {min(fsdp):.2f} 到 {max(fsdp):.2f} 倍：gloo 切开梯度要先全部取平均，多转一圈，该是 4/3", 1.2 < min(fsdp) and max(fsdp) < 1.45, "同上；nccl 才是 1 倍；只包最外面一层，反向不用再收齐，会少一圈")
    confirm(f"杀死以后接着练，损失一位也不差：{after['killed']['gap']:.0e}", after["killed"]["start"] == SAVE_EVERY and after["killed"]["gap"] == 0, "检查点里少了优化器；或数据的次序与步数无关")
    if "moved" in after:
        confirm(f"换了进程数接着练，差不到 1e-4：{after['moved']['gap']:.0e}", after["moved"]["start"] == SAVE_EVERY and after["moved"]["gap"] < 1e-4, "同上；或全批随进程数变了")


if __name__ == "__main__":
    main()
