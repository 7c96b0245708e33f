"""附录 A · 练习 A.4　同一次矩阵乘法，在每个设备上要多久？

题目：　100 × 200 的矩阵乘 200 × 300 的矩阵，在 CPU 上要多久？在 GPU 上呢？
先想：　它要做 100 × 200 × 300 次乘法和差不多的加法，一共 1200 万次运算。CPU 每秒能做几百亿次，那应当是多少微秒？
        GPU 一定快吗？
解法：　① 在每个设备上建好两个矩阵（搬运不计时）；② 先热身，再重复多次，前后都等设备干完；
        ③ 换小的、大的矩阵再量，看规律。
动手改：1. 把 SIZES 的第一行改成 (1, 1, 1, 300)：两次运算也要 1 微秒上下，这就是"接一单"的固定开销。
        2. 把 measure 里的 rand 都改成 zeros：时间几乎不变，矩阵乘法不会因为数是 0 就偷懒。

运行：
    python appendix-A/experiments/exercise_A_4_matmul_timing.py                 # 量 CPU 和能用的 GPU
    python appendix-A/experiments/exercise_A_4_matmul_timing.py --device cpu    # 只量 CPU
    约 3 秒，0.3 GB（2 核 CPU）
"""

import argparse
import time

import torch

# 左边的行数、中间的维数、右边的列数、重复几次。中间那个是题目；小的看固定开销，大的是 GPT-2 small 前馈网络的大小。
SIZES = [(32, 64, 32, 300), (100, 200, 300, 300), (1024, 768, 3072, 3)]


# region 沿用 setup/device_check.py: pick_device, synchronize, seconds
def pick_device(name="auto"):
    """选择计算设备；点名要的设备不存在就报错，绝不悄悄换成 CPU。（详解见 setup/device_check.py）"""
    available = {"mps": torch.backends.mps.is_available(), "cuda": torch.cuda.is_available(), "cpu": True}
    name = next(device for device, found in available.items() if found) if name == "auto" else name
    if not available.get(name):
        raise ValueError(f"这台机器上没有设备 {name}；运行 python setup/device_check.py 看有哪些、为什么")
    return torch.device(name)


def synchronize(device):
    """等 GPU 把活干完。（详解见 setup/device_check.py）"""
    if device.type == "mps":
        torch.mps.synchronize()
    elif device.type == "cuda":
        torch.cuda.synchronize()


def seconds(work, device, repeats):
    """测一件事平均要多久，先热身一次。（详解见 setup/device_check.py）"""
    work()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronize(device)
    return (time.perf_counter() - start) / repeats


# endregion


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def measure(device, rows, inner, columns, repeats):
    """量一次矩阵乘法 (rows, inner) @ (inner, columns) 的时间。

    参数:
        device (torch.device): 在哪里算
        rows (int): 左边矩阵的行数
        inner (int): 左边的列数，也是右边的行数，相等才能乘
        columns (int): 右边矩阵的列数
        repeats (int): 重复几次；一次只有几十微秒，次数少了全是杂音

    返回:
        tuple[float, Tensor]: 每次的微秒数，和搬回 CPU 的结果
    """
    torch.manual_seed(123)
    # 先在 CPU 上取随机数再搬，各设备算的才是同一道题。
    a, b = torch.rand(rows, inner).to(device), torch.rand(inner, columns).to(device)
    # 取三回里最小的而不是平均：别的程序只会让它变慢，不会让它变快。
    best = min(seconds(lambda: a @ b, device, repeats) for _ in range(3))
    return best * 1e6, (a @ b).cpu()  # (rows, columns)


def main():
    """量题目那一次，再换两个大小看规律。"""
    parser = argparse.ArgumentParser(description="练习 A.4　矩阵乘法要多久")
    parser.add_argument("--device", default="auto", help="auto、mps、cuda 或 cpu；CPU 总会一起量（默认：auto）")
    args = parser.parse_args()
    try:
        device = pick_device(args.device)
    except ValueError as error:
        parser.error(str(error))
    devices = {"cpu": torch.device("cpu"), device.type: device}  # CPU 总要量，好对照
    print(f"设备：{'、'.join(devices)}；CPU 用 {torch.get_num_threads()} 个线程")

    micros, worst = {}, 0.0
    for rows, inner, columns, repeats in SIZES:
        operations = 2 * rows * inner * columns  # 每个输出要 inner 次乘、inner 次加
        note = "　← 题目" if rows == 100 else ""
        print(f"\n({rows}, {inner}) @ ({inner}, {columns})　{operations:,} 次运算{note}")
        for name, device in devices.items():
            micros[name, rows], product = measure(device, rows, inner, columns, repeats)
            if name == "cpu":
                reference = product
            worst = max(worst, ((product - reference).abs().max() / reference.max()).item())
            gflops = operations / micros[name, rows] / 1000
            print(f"  {name:<5} {micros[name, rows]:10,.1f} 微秒　{gflops:8,.1f} GFLOP/s")

    if ("cpu", 100) in micros:
        print("\n答案：" + "，".join(f"{name} {micros[name, 100]:.1f} 微秒" for name in devices))
        print("书的参考答案：Colab 的 CPU 63.8 微秒，V100 显卡 13.8 微秒。每台电脑都不同，差几倍很正常。")

    print("\n这个数字对吗？")
    confirm(f"各设备的结果与 CPU 相同（相对误差 {worst:.0e}，应小于 0.002）", worst < 2e-3, "各设备上用的随机数不同")
    times = [micros["cpu", rows] for rows, *_ in SIZES]
    confirm("CPU 上，大的那个比小的慢 100 倍以上", times[-1] > 100 * times[0], "计时把搬运也算进去了，或者重复次数太少")

    print("\n学到什么")
    print("  每次运算都有固定的开销，GPU 的比 CPU 的大；矩阵小时它占大头，GPU 快不了。矩阵大了，GPU 才甩得开 CPU。")
    print("  GPU 是接单就返回的：计时前后要等它干完（synchronize），否则量到的只是下单的时间，快得离谱。")


if __name__ == "__main__":
    main()
