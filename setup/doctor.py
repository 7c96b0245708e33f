"""设备医生：这台机器算得对不对、多快，每件事该用哪个设备

「在我的 Mac 上能跑，可是数字不对」：加速器（MPS、CUDA）算错时往往不报错，只是损失降不下去，或生成一串逗号。
医生把每章的组件各跑一次前向、反向、更新一步，与 CPU 上 float64 算的比；再量速度，逐项给出建议。

运行（由 device_check.py 调用）：
    python setup/device_check.py --doctor                # 全部设备
    python setup/device_check.py --doctor --device cpu   # 只查 CPU
    约 15 秒，1.1 GB（2 核 CPU）

怎么比：
    前向、反向　相对误差，即最大的差 ÷ 最大的数。float32 有 7 位有效数字，加法次序不同，末几位就不同，但不会差到万分之一
    更新一步　　各设备都用 float64 求的梯度，只比优化器走的那一步，差多少个学习率：这样三步各查各的，错在哪一步看得出来
"""

import contextlib
import importlib.util
import io
import os
import platform
import re
import subprocess
import time
from pathlib import Path

import torch
import torch.nn as nn

ROOT = Path(__file__).resolve().parents[1]
# 每种精度允许的误差，依次是前向、反向、更新。bf16 只有两三位有效数字，误差大得多是正常的；更新那一步权重总是 float32。
TOLERANCE = {"fp32": (1e-4, 1e-3, 1e-2), "bf16": (3e-2, 1e-1, 1e-2)}
CONFIG = {"vocab_size": 1000, "context_length": 32, "emb_dim": 64, "n_heads": 4, "n_layers": 2, "drop_rate": 0.0, "qkv_bias": False}  # dropout 的位置各设备不同，没法比，所以关掉
# 已知会算错的版本：设备、从哪个版本、到哪个版本之前、说明。别人在他的机器上报告的，你的不一定会遇到，以医生实际查到的为准。
KNOWN_BAD = [
    ("mps", (2, 0), (2, 1), "multinomial 总是抽到 0 号，或得到负的编号（pytorch/pytorch#99802、#92752）"),
    ("mps", (2, 2), (2, 3), "macOS 14.4 上生成的词元全是 0 号，打印出来是一串叹号（karpathy/llm.c#36）"),
    ("mps", (2, 8), (2, 9), "第 7 章的初始损失是 19.88 而不是 3.83，装上 GPT-2 的权重说胡话（rasbt/LLMs-from-scratch#791、#846；pytorch/pytorch#162779）；作者建议 2.9 或更新（#900）"),
    ("mps", (2, 13), (2, 14), "multinomial 偶尔抽中概率为 0 的词元，top-k 会漏（pytorch/pytorch#192577，在 2.13.0 上报告）；带温度的生成请用 --device cpu"),
]


class Machine:
    """一种算法：在哪个设备上、用什么精度。测试用它的子类冒充会算错的加速器。

    参数:
        device (torch.device): 设备
        precision (str): fp64（参照）、fp32 或 bf16（自动混合精度）
    """

    def __init__(self, device, precision="fp32"):
        self.device, self.precision = device, precision
        self.name = f"{device.type} {precision}"

    def move(self, thing):
        """把张量或模型搬过来。

        参数:
            thing (Tensor 或 nn.Module): 在 CPU 上的；整数张量（词元编号）不改类型

        返回:
            Tensor 或 nn.Module: 在这个设备上的
        """
        wide = self.precision == "fp64" and (isinstance(thing, nn.Module) or thing.is_floating_point())
        return thing.to(self.device, torch.float64) if wide else thing.to(self.device)

    def computing(self):
        """计算时要开着的上下文：整个前向、反向、更新都在里面。

        返回:
            上下文管理器: 真的设备不需要，什么也不做
        """
        return contextlib.nullcontext()

    def autocast(self):
        """前向时的自动混合精度（autocast）：矩阵乘法用 bf16，损失、归一化仍用 float32。

        返回:
            上下文管理器: fp32、fp64 时什么也不做
        """
        # 写真正的设备名：把 mps 写成 cpu，自动混合精度就悄悄地没开。
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self.precision == "bf16" else contextlib.nullcontext()


def load(path):
    """按路径导入一个脚本，取出里面的组件。

    参数:
        path (str): 相对于项目文件夹，如 ch04/main/gpt.py

    返回:
        module: 导入的脚本
    """
    spec = importlib.util.spec_from_file_location(path.replace("/", "_").removesuffix(".py"), ROOT / path)
    module = importlib.util.module_from_spec(spec)
    with contextlib.redirect_stdout(io.StringIO()):
        spec.loader.exec_module(module)
    return module


def tokens(b, t):
    """随机的词元编号，各设备用同样的一批。

    参数:
        b (int): 几句
        t (int): 每句几个

    返回:
        Tensor: (b, t)
    """
    return torch.randint(CONFIG["vocab_size"], (b, t), generator=torch.Generator().manual_seed(1))


class InputEmbedding(nn.Module):
    """第 2 章的输入嵌入：词嵌入加位置嵌入。

    参数:
        vocab_size (int): 词表大小
        d (int): 嵌入维度
        t (int): 序列长度
    """

    def __init__(self, vocab_size, d, t):
        super().__init__()
        self.tok_emb, self.pos_emb = nn.Embedding(vocab_size, d), nn.Embedding(t, d)

    def forward(self, idx):
        """前向传播。

        参数:
            idx (Tensor): 词元编号，(b, t)

        返回:
            Tensor: 输入嵌入，(b, t, d)
        """
        return self.tok_emb(idx) + self.pos_emb.weight  # (b, t, d)


def transposed_linear():
    """权重是转置来的线性层：内存里不连续，GPT-2 的权重就是转置着装进来的。PyTorch 2.8 的 MPS 恰恰在这里算错。

    返回:
        nn.Linear: 64 → 256，weight 不连续
    """
    linear = nn.Linear(64, 256)
    linear.weight = nn.Parameter(torch.randn(64, 256).T)  # (256, 64)
    return linear


def components():
    """要查的组件，从各章的脚本里取。

    返回:
        list[tuple]: 章、名字、建模型的函数、输入、怎么算；「怎么算」收模型、设备和各个输入，给出输出或损失
    """
    dataloader, attention, gpt = load("ch02/main/dataloader.py"), load("ch03/main/multihead_attention.py"), load("ch04/main/gpt.py")
    pretrain, classify, instruct = load("ch05/main/gpt_train.py"), load("ch06/main/gpt_class_finetune.py"), load("ch07/main/gpt_instruction_finetuning.py")
    network = load("appendix-A/main/ddp_torchrun.py").NeuralNetwork
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 32, 64, generator=generator)
    text = (ROOT / "setup" / "data" / "story-en.txt").read_text(encoding="utf-8")[:2000]
    batch, _ = next(iter(dataloader.create_dataloader_v1(text, batch_size=8, max_length=16, stride=16, shuffle=False)))
    ids = tokens(2, 33)
    # 两条长短不一的样本，用 999 号填充；目标里的填充换成 -100，不算损失。
    padded = instruct.custom_collate_fn([tokens(1, 20)[0].tolist(), tokens(1, 9)[0].tolist()], pad_token_id=999)

    def plain(model, device, *inputs):
        return model(*inputs)

    def classifier():
        model = gpt.GPTModel(CONFIG)
        model.out_head = nn.Linear(CONFIG["emb_dim"], 2)  # 第 6 章：输出层换成两类
        return model

    return [
        ("ch02", "输入嵌入（一批数据）", lambda: InputEmbedding(50257, 64, 16), (batch,), plain),
        ("ch03", "MultiHeadAttention", lambda: attention.MultiHeadAttention(64, 64, 32, 0.0, 4), (x,), plain),
        ("ch04", "LayerNorm", lambda: gpt.LayerNorm(64), (x,), plain),
        ("ch04", "GELU", gpt.GELU, (x,), plain),
        ("ch04", "TransformerBlock", lambda: gpt.TransformerBlock(CONFIG), (x,), plain),
        ("ch04", "GPTModel", lambda: gpt.GPTModel(CONFIG), (ids[:, :-1],), plain),
        ("ch05", "损失与训练一步", lambda: pretrain.GPTModel(CONFIG), (ids[:, :-1], ids[:, 1:]), lambda m, d, i, t: pretrain.calc_loss_batch(i, t, m, d)),
        ("ch05", "转置的权重", transposed_linear, (x,), plain),
        ("ch06", "分类头", classifier, (ids[:, :-1], torch.tensor([0, 1])), lambda m, d, i, t: classify.calc_loss_batch(i, t, m, d)),
        ("ch07", "带 -100 的损失", lambda: instruct.GPTModel(CONFIG), padded, lambda m, d, i, t: instruct.calc_loss_batch(i, t, m, d)),
        ("appendix-A", "NeuralNetwork", lambda: network(50, 3), (torch.randn(4, 50, generator=generator),), plain),
    ]


def compute(machine, build, inputs, call, gradients=None):
    """一个组件在一个设备上：前向、反向、更新一步。

    参数:
        machine (Machine): 在哪里算
        build (callable): 建模型，在 CPU 上建再搬，各设备的初始权重才相同
        inputs (tuple[Tensor]): 输入
        call (callable): 怎么算
        gradients (list[Tensor] 或 None): 更新时用的梯度；None 就用自己求的

    返回:
        tuple[list, list, list]: 输出、梯度、每个参数走了多远（单位是学习率），都搬回了 CPU
    """
    torch.manual_seed(123)
    model = machine.move(build())
    inputs = [machine.move(each).detach() for each in inputs]
    leaves = [p for p in model.parameters() if p.requires_grad]
    with machine.computing():
        for each in inputs:
            each.requires_grad_(each.is_floating_point())
        with machine.autocast():
            output = call(model, machine.device, *inputs)
        # 各个输出乘上不同的权重再加起来：不这样的话，层归一化的输出平方和是常数，梯度全是 0，什么也查不出来。
        weights = machine.move(torch.randn(output.shape, generator=torch.Generator().manual_seed(2))) if output.ndim else 1.0
        (output.to(leaves[0].dtype if leaves else inputs[0].dtype) * weights).sum().backward()
        found = [leaf.grad.clone() for leaf in leaves + [each for each in inputs if each.is_floating_point()]]
        moves = []
        if leaves:
            before = [leaf.detach().clone() for leaf in leaves]
            for leaf, gradient in zip(leaves, gradients or found):
                leaf.grad = machine.move(gradient.float()).to(leaf.dtype)
            optimizer = torch.optim.AdamW(leaves, lr=1e-2, weight_decay=0.1)
            optimizer.step()
            moves = [(leaf.detach() - old) / 1e-2 for leaf, old in zip(leaves, before)]
        return tuple([each.detach().cpu().double() for each in group] for group in ([output], found, moves))


def error(got, expected):
    """几个张量与参照相比，最大的相对误差。

    参数:
        got (list[Tensor]): 得到的
        expected (list[Tensor]): 参照

    返回:
        float: 相对误差；有 nan 或 inf 时是 inf
    """
    if not all(torch.isfinite(each).all() for each in got):
        return float("inf")
    largest = max((each.abs().max().item() for each in expected), default=0.0)
    # 有的梯度理应是 0（键的偏置对 softmax 没有影响），除以自己会把舍入误差放得很大，所以分母至少是全体最大的百分之一。
    return max(((a - b).abs().max().item() / max(b.abs().max().item(), largest / 100, 1e-30) for a, b in zip(got, expected)), default=0.0)


def explain(problem, device):
    """把报错变成一句说清怎么办的中文。

    参数:
        problem (Exception): 捕获的异常
        device (torch.device): 在哪个设备上

    返回:
        tuple[str, str]: 出了什么事、怎么办
    """
    text = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
    if "out of memory" in str(problem).lower() or isinstance(problem, MemoryError):
        return "内存不够", "关掉别的占内存的程序再查；训练时把批改小（--batch-size 1 或改脚本里的 batch_size），还不够就用 --device cpu"
    operator = re.search(r"aten::[\w.]+", str(problem))
    if isinstance(problem, NotImplementedError) or "not implemented" in str(problem).lower() or "supported" in str(problem).lower():
        fallback = "设环境变量 PYTORCH_ENABLE_MPS_FALLBACK=1，缺的运算就改到 CPU 上算（慢一些）；" if device.type == "mps" else ""
        return f"缺少运算 {operator.group() if operator else text}", f"{fallback}升级到 requirements.txt 里的 PyTorch，或用 --device cpu"
    return f"报错：{text[:120]}", "升级到 requirements.txt 里的 PyTorch；还不行就用 --device cpu，并把下面的报告贴给维护者"


def check_component(machine, build, inputs, call, expected):
    """查一个组件。

    参数:
        machine (Machine): 在哪里算
        build, inputs, call: 见 components
        expected (tuple): 参照，compute 的返回

    返回:
        dict: ok、errors（前向、反向、更新的误差）；不 ok 时还有 what（出了什么事）和 advice（怎么办）
    """
    try:
        got = compute(machine, build, inputs, call, expected[1])
    except Exception as problem:  # 加速器出错的花样太多，一个组件出错不能妨碍查别的
        what, advice = explain(problem, machine.device)
        return {"ok": False, "errors": None, "what": what, "advice": advice}
    errors = (error(got[0], expected[0]), error(got[1], expected[1]), max(((a - b).abs().max().item() for a, b in zip(got[2], expected[2])), default=0.0))
    wrong = [
        f"{step}{'得到 nan 或 inf' if value == float('inf') else f'差 {value:.1e}'}（应小于 {limit:.0e}）"
        for step, value, limit in zip(("前向", "反向", "更新"), errors, TOLERANCE[machine.precision])
        if not value < limit
    ]
    if not wrong:
        return {"ok": True, "errors": errors}
    return {"ok": False, "errors": errors, "what": "算错了：" + "，".join(wrong), "advice": "不要用它算这一类东西，加 --device cpu；升级到 requirements.txt 里的 PyTorch 和新的系统之后，再查一次"}


def check_generation(machine, parts, expected):
    """贪心地写 12 个词元，与参照逐个相同；再从 25 个候选里抽 1024 次，一次也不许抽中别的。

    参数:
        machine (Machine): 在哪里算，fp32
        parts (module): ch05/main/gpt_train.py
        expected (Tensor 或 None): 参照写的；None 表示这次就是参照

    返回:
        tuple[dict, Tensor]: 结果（同 check_component），写出来的词元
    """
    try:
        torch.manual_seed(123)
        model = machine.move(parts.GPTModel(CONFIG)).eval()
        with machine.computing():
            written = parts.generate_text_simple(model, machine.move(tokens(1, 4)), 12, CONFIG["context_length"]).cpu()
            if expected is None:
                return {"ok": True, "errors": None}, written
            logits = torch.full((32, 50257), -torch.inf)  # (32, V)
            logits[:, ::2011] = 0.0  # 每隔 2011 个留一个，共 25 个
            probas = torch.softmax(machine.move(logits), dim=-1)  # (32, V)
            drawn = torch.cat([torch.multinomial(probas, 1) for _ in range(32)]).cpu()  # (1024, 1)
    except Exception as problem:
        what, advice = explain(problem, machine.device)
        return {"ok": False, "errors": None, "what": what, "advice": advice}, None
    if not torch.equal(written, expected):
        place = (written != expected).int().argmax().item() - 3
        return {"ok": False, "errors": None, "what": f"算错了：贪心写的第 {place} 个词元与参照不同", "advice": "生成时加 --device cpu"}, written
    outside = int((drawn % 2011 != 0).sum() + (drawn < 0).sum() + (drawn >= 50257).sum())
    if outside:
        return {"ok": False, "errors": None, "what": f"算错了：抽 1024 次，{outside} 次抽中概率为 0 的词元（multinomial）", "advice": "带温度、top-k 的生成加 --device cpu；贪心不受影响"}, written
    return {"ok": True, "errors": (0.0, 0.0, 0.0)}, written


def speed(machine, parts, synchronize):
    """用第 5 章的 mini 量两件事：一次写一个词元的生成，和训练一步。

    参数:
        machine (Machine): 在哪里算
        parts (module): ch05/main/gpt_train.py
        synchronize (callable): 等设备把活干完，见 device_check.py

    返回:
        tuple[float, float] 或 str: 生成每秒几个词元、训练每秒几千个词元；量不成时是原因
    """
    try:
        config = parts.MODEL_CONFIGS["mini"]
        torch.manual_seed(123)
        model = machine.move(parts.GPTModel(config))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        ids = machine.move(tokens(2, 257))

        def train():
            optimizer.zero_grad()
            with machine.autocast():
                loss = parts.calc_loss_batch(ids[:, :-1], ids[:, 1:], model, machine.device)
            loss.backward()
            optimizer.step()

        def write():
            with machine.autocast():
                parts.generate_text_simple(model, ids[:1, :8], 8, config["context_length"])

        results = []
        with machine.computing():
            for work, amount in ((write, 8), (train, 512 / 1000)):
                model.train(work is train)
                work()  # 第一次要分配内存、编译内核，不算数
                synchronize(machine.device)
                start, repeats = time.perf_counter(), 0
                while repeats == 0 or time.perf_counter() - start < 1:  # 慢的机器上只量一次，整个检查才不会超过半分钟
                    work()
                    synchronize(machine.device)
                    repeats += 1
                results.append(amount * repeats / (time.perf_counter() - start))
        return tuple(results)
    except Exception as problem:
        return explain(problem, machine.device)[0]


def known_bad(device):
    """这个版本的 PyTorch，别人报告过哪些会算错的地方。

    参数:
        device (torch.device): 设备

    返回:
        list[str]: 说明
    """
    number = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    return [text for kind, start, end, text in KNOWN_BAD if kind == device.type and start <= number < end]


def chip():
    """处理器的型号。

    返回:
        str: 例如 Apple M2；查不到时是架构名
    """
    try:
        if platform.system() == "Darwin":
            return subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, timeout=5).stdout.strip() or platform.machine()
        if platform.system() == "Linux":
            found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
            return found.group(1) if found else platform.machine()
    except (OSError, subprocess.SubprocessError):
        pass
    return platform.processor() or platform.machine()


def recommend(machines, results, speeds):
    """每件事用哪个设备：先要算得对，再挑最快的。

    参数:
        machines (list[Machine]): 查过的
        results (dict): 名字 → 各组件的结果，键是章和组件
        speeds (dict): 名字 → speed 的返回

    返回:
        list[str]: 每件事一句
    """
    lines = []
    for place, task, unit in ((0, "逐词元生成（一次一句）", "词元/秒"), (1, "训练、微调", "千词元/秒")):
        fit = []
        for machine in machines:
            # bf16 的容差宽，小错看不出来，所以同一个设备的 fp32 也要算得对。
            names = {machine.name} | {other.name for other in machines if other.device == machine.device and other.precision == "fp32"}
            # 训练用得到前向、反向、更新；生成只用得到前向和采样。
            broken = [
                part
                for name in names
                for part, result in results[name].items()
                if not result["ok"] and (place == 1 or result["errors"] is None or not result["errors"][0] < TOLERANCE["bf16" if name.endswith("bf16") else "fp32"][0])
            ]
            if not broken and not isinstance(speeds[machine.name], str):
                fit.append((speeds[machine.name][place], machine.name))
        if not fit:
            lines.append(f"{task}　没有一种算得全对：先照上面说的升级 PyTorch")
            continue
        best, name = max(fit)
        others = "，".join(f"{other} {value:.3g}" for value, other in sorted(fit, reverse=True)[1:])
        lines.append(f"{task}　用 {name}（{best:.3g} {unit}{'；' + others if others else ''}）")
    return lines


def examine(devices, synchronize, memory=None, make=Machine):
    """查完所有设备，打印结果、建议和可以粘贴的报告。

    参数:
        devices (list[torch.device]): 查哪些设备
        synchronize (callable): 等设备把活干完
        memory (float 或 None): 内存，GB
        make (callable): 由设备和精度得到 Machine；测试用它换成冒充的

    返回:
        bool: 没有 ✗
    """
    start = time.perf_counter()
    if all(device.type == "cpu" for device in devices):
        print("没有查加速器（MPS、CUDA）：只查 CPU 的 float32 和 bf16，与 CPU 的 float64 比。")
    machines = [make(device, precision) for device in devices for precision in ("fp32", "bf16")]
    truth = Machine(torch.device("cpu"), "fp64")
    parts = load("ch05/main/gpt_train.py")
    results = {machine.name: {} for machine in machines}
    for chapter, name, build, inputs, call in components():
        expected = compute(truth, build, inputs, call)
        for machine in machines:
            results[machine.name][chapter, name] = check_component(machine, build, inputs, call, expected)
    _, written = check_generation(truth, parts, None)
    for machine in machines:
        if machine.precision == "fp32":  # bf16 分数接近时会选到别的词元，那不算错
            results[machine.name]["ch05", "生成与采样"] = check_generation(machine, parts, written)[0]
    speeds = {machine.name: speed(machine, parts, synchronize) for machine in machines}

    report = [f"PyTorch {torch.__version__}，Python {platform.python_version()}，{platform.platform()}"]
    report.append(f"{chip()}，{os.cpu_count()} 核，{torch.get_num_threads()} 个线程" + (f"，内存 {memory:.1f} GB" if memory else ""))
    report += [f"CUDA 显卡 {torch.cuda.get_device_name()}" for device in devices if device.type == "cuda" and torch.cuda.is_available()]
    report.append("与 CPU float64 相比的误差：前向 / 反向 / 更新")
    names = list(dict.fromkeys(part for machine in machines for part in results[machine.name]))
    for machine in machines:
        limits = " / ".join(f"{limit:.0e}" for limit in TOLERANCE[machine.precision])
        report.append(f"[{machine.name}]　允许 {limits}")
        for part in names:
            result = results[machine.name].get(part)
            if result:
                shown = " / ".join(f"{value:.0e}" for value in result["errors"]) if result["errors"] and part[1] != "生成与采样" else "逐个相同" if result["ok"] else result["what"]
                report.append(f"  {'✓' if result['ok'] else '✗'} {part[0]} {part[1]}　{shown}")
        pace = speeds[machine.name]
        report.append(f"  速度　{pace}" if isinstance(pace, str) else f"  速度　生成 {pace[0]:.3g} 词元/秒，训练 {pace[1]:.3g} 千词元/秒（ch05 的 mini）")
    problems = [(machine, part, result) for machine in machines for part, result in results[machine.name].items() if not result["ok"]]
    report.append("\n怎么办" if problems else "\n每个组件都算对了")
    report += [f"  ✗ {part[0]} {part[1]}，{machine.name}：{result['what']}\n      {result['advice']}" for machine, part, result in problems]
    report += [f"  · PyTorch {torch.__version__} 在 {device.type} 上，有人报告过：{text}" for device in devices for text in known_bad(device)]
    report.append("\n建议（在这台机器上量的；模型越大，GPU 越占便宜）")
    report += ["  " + line for line in recommend(machines, results, speeds)]
    report.append(f"\n用时 {time.perf_counter() - start:.0f} 秒")
    print("\n".join(["─" * 40, *report, "─" * 40]))
    print("报告问题时，把两条线之间的都贴上")
    return not problems
