"""设备检查：这台机器用什么来算？MPS、CUDA 还是 CPU

MPS（Metal Performance Shaders）是 PyTorch 在苹果芯片上使用 GPU 的方式，CUDA 是英伟达显卡的。
都没有也完全能学：本书的模型不大，CPU 一样跑得动，只是训练慢一些。

运行：
    python setup/device_check.py                 # 找到了什么、选了哪个、有多快
    python setup/device_check.py --device mps    # 只看某一个；没有它就报错，不会悄悄换成 CPU
    python setup/device_check.py --doctor        # 算得对不对：每章的组件都查一遍，逐项建议用哪个设备
    约 4 秒，0.5 GB（2 核 CPU）；--doctor 约 15 秒
"""

import os
import platform
import sys
import time
from pathlib import Path

import torch
import torch.nn as nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
from chinese_cli import ChineseParser


def pick_device(name="auto"):
    """选择计算设备；点名要的设备不存在就报错，绝不悄悄换成 CPU。

    参数:
        name (str): "auto" 依次找 MPS、CUDA、CPU；也可以点名 "mps"、"cuda"、"cpu"

    返回:
        torch.device: 选中的设备

    异常:
        ValueError: 名字不认识，或这台机器上没有点名的设备
    """
    available = {"mps": torch.backends.mps.is_available(), "cuda": torch.cuda.is_available(), "cpu": True}
    name = next(device for device, found in available.items() if found) if name == "auto" else name
    if not available.get(name):
        raise ValueError(f"这台机器上没有设备 {name}；运行 python setup/device_check.py 看有哪些、为什么")
    return torch.device(name)


def synchronize(device):
    """等 GPU 把活干完。

    GPU 是"接单就返回"的：Python 这边已经往下走了，那边可能还没算完。计时前后不等一等，测到的只是下单的时间。

    参数:
        device (torch.device): 设备；CPU 不需要等
    """
    if device.type == "mps":
        torch.mps.synchronize()
    elif device.type == "cuda":
        torch.cuda.synchronize()


def seconds(work, device, repeats):
    """测一件事平均要多久，先热身一次。

    参数:
        work (callable): 要计时的函数，没有参数
        device (torch.device): 它在哪里算
        repeats (int): 重复几次取平均

    返回:
        float: 每次的秒数
    """
    work()  # 第一次要分配内存、编译内核，不算数
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronize(device)
    return (time.perf_counter() - start) / repeats


def measure_speed(device):
    """测两件最常做的事：矩阵乘法和一个训练步。

    参数:
        device (torch.device): 设备

    返回:
        tuple[float, float]: 矩阵乘法每秒多少十亿次浮点运算（GFLOP/s），一个训练步多少毫秒
    """
    # 1024 个词元经过一层 GPT-2 small 的前馈网络，正是训练时最花时间的那种乘法。
    x = torch.randn(1024, 768, device=device)
    weight = torch.randn(768, 3072, device=device)
    gflops = 2 * 1024 * 768 * 3072 / 1e9  # 每个输出要 768 次乘和 768 次加
    speed = gflops / seconds(lambda: x @ weight, device, repeats=10)

    model = nn.Sequential(nn.Linear(768, 3072), nn.GELU(), nn.Linear(3072, 768)).to(device)

    def step():
        (model(x) - x).pow(2).mean().backward()
        with torch.no_grad():  # 手写最朴素的梯度下降：第一次用 torch.optim 要多导入一秒的东西，这里犯不着
            for parameter in model.parameters():
                parameter -= 1e-3 * parameter.grad
                parameter.grad = None

    return speed, seconds(step, device, repeats=5) * 1000


def total_memory():
    """这台机器的内存。

    返回:
        float 或 None: 单位 GB（2 的 30 次方字节）；系统不告诉我们时为 None
    """
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):  # Windows 没有 sysconf
        return None


def describe_accelerators():
    """逐个说明 MPS 和 CUDA：有没有，没有的话为什么、怎么办。"""
    if torch.backends.mps.is_available():
        print(f"  MPS　　有，GPU 最多可用 {torch.mps.recommended_max_memory() / 2**30:.1f} GB（苹果芯片的 GPU 与 CPU 共用内存）")
    elif platform.system() != "Darwin":
        print("  MPS　　没有：它只在苹果电脑上有")
    elif platform.machine() != "arm64":
        print("  MPS　　没有：这是 Intel 芯片的 Mac，或者 Python 是 Intel 版的（在苹果芯片上请装 arm64 版的 Python）")
    elif not torch.backends.mps.is_built():
        print("  MPS　　没有：装的 PyTorch 不带 MPS，请重新 pip install -r requirements.txt")
    else:
        print("  MPS　　没有：macOS 太旧，请升级到 14 或更新的版本")
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        print(f"  CUDA　 有，{torch.cuda.get_device_name()}，显存 {total / 2**30:.1f} GB，空闲 {free / 2**30:.1f} GB")
    elif platform.system() != "Darwin":
        built = torch.version.cuda is not None
        print(f"  CUDA　 没有：{'没找到英伟达显卡，或驱动没装好（运行 nvidia-smi 看看）' if built else '装的是 CPU 版 PyTorch；有英伟达显卡的话，到 PyTorch 官网选 CUDA 版的安装命令'}")


def print_advice(device):
    """内存不够怎么办、怎样看着 GPU 干活。

    参数:
        device (torch.device): 选中的设备
    """
    print("\n内存不够（out of memory）时，依次试：")
    print("  1. 把批改小（batch size）：激活值占的内存与它成正比，2 变 1 就省一半")
    print("  2. 换小模型：训练时，每个参数要 16 字节（权重、梯度、AdamW 的两份动量各 4 字节），GPT-2 small 约 2.6 GB 起步")
    print("  3. 梯度累积（gradient accumulation）：几个小批的梯度加起来再更新一次，效果约等于大批，内存只要小批的")
    watch = {"mps": "打开「活动监视器」，菜单「窗口 → GPU 历史记录」", "cuda": "另开一个终端运行 nvidia-smi -l 1"}
    print("怎样看 GPU 忙不忙：" + watch.get(device.type, "现在用的是 CPU，看系统的任务管理器（top、活动监视器）即可"))
    if device.type == "mps":
        print("数字和书上略有不同？MPS 的加法次序与 CPU 不同，末几位不一样是正常的；训练几十步后差别会放大，核对原书请用 --device cpu")


def main():
    """打印设备报告。"""
    parser = ChineseParser("设备检查：找到了什么、选了哪个、有多快")
    parser.add_argument("--device", default="auto", help="auto、mps、cuda 或 cpu（默认：auto）")
    parser.add_argument("--doctor", action="store_true", help="查每章的组件算得对不对、多快，逐项给建议；有算错的，退出码是 1")
    args = parser.parse_args()
    try:
        device = pick_device(args.device)
    except ValueError as error:
        parser.error(str(error))

    memory = total_memory()
    # 有 GPU 时也查 CPU，好比较；点名时只看点名的。
    devices = [device] if args.device != "auto" or device.type == "cpu" else [device, torch.device("cpu")]
    if args.doctor:
        from doctor import examine  # 用到才导入：它要导入每一章的脚本

        sys.exit(0 if examine(devices, synchronize, memory) else 1)
    print("找到了什么")
    print(f"  系统　 {platform.system()} {platform.machine()}，Python {platform.python_version()}，PyTorch {torch.__version__}")
    print(f"  CPU　　{os.cpu_count()} 核，PyTorch 用 {torch.get_num_threads()} 个线程" + (f"，内存 {memory:.1f} GB" if memory else ""))
    describe_accelerators()

    why = {"mps": "苹果 GPU，训练通常比 CPU 快几倍", "cuda": "英伟达 GPU，最快", "cpu": "没有可用的 GPU"}
    print(f"\n选了哪个：{device}（{'你点名要的' if args.device != 'auto' else why[device.type]}）")

    print("\n有多快")
    for each in devices:
        speed, step = measure_speed(each)
        print(f"  {each.type:<5} 矩阵乘法 {speed:8,.0f} GFLOP/s　训练一步 {step:7.1f} 毫秒（一层前馈网络，1024 个词元）")
    if devices[-1].type != device.type:
        print("  注意：逐个词元生成文本时，小模型在 CPU 上常常反而更快，因为 GPU 每下一单都要等一等")
    print_advice(device)


if __name__ == "__main__":
    main()
