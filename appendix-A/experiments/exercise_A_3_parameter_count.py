"""附录 A · 练习 A.3　NeuralNetwork(2, 2) 有多少个参数？

题目：　A.5 节的网络换成 2 个输入、2 个输出，可训练的参数一共多少个？不用 PyTorch，先在纸上数。
先想：　输入从 50 个减到 2 个，第一层从 1530 个参数减到多少？三层里哪一层最大？（先想 10 秒，再运行）
解法：　① 每个线性层 = 输入数 × 输出数（权重）+ 输出数（偏置）；② 三层加起来；③ 让 PyTorch 数一遍，对一对。
动手改：1. 把 by_hand 里的 + d_out 去掉：少 52 个，正好是三层的偏置 30 + 20 + 2。
        2. 去掉 num_params 里的 if p.requires_grad，再在它前面加一句 model.layers[0].requires_grad_(False)
           （冻结第一层）：仍是 752；加回 if 变成 662。"参数"和"可训练的参数"是两个数，第 6 章微调时就用得着。

运行：
    python appendix-A/experiments/exercise_A_3_parameter_count.py
    python appendix-A/experiments/exercise_A_3_parameter_count.py --num-inputs 50 --num-outputs 3    # A.5 节的大小
    约 1 秒，0.3 GB（2 核 CPU）
"""

import argparse

import torch.nn as nn


# region 沿用 appendix-A/main/example_03_multilayer_network.py: NeuralNetwork
class NeuralNetwork(nn.Module):
    """两个隐藏层的全连接网络：num_inputs → 30 → 20 → num_outputs，中间用 ReLU。（详解见 appendix-A/main/example_03_multilayer_network.py）"""

    def __init__(self, num_inputs, num_outputs):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(num_inputs, 30),
            nn.ReLU(),
            nn.Linear(30, 20),
            nn.ReLU(),
            nn.Linear(20, num_outputs),
        )

    def forward(self, x):
        logits = self.layers(x)  # (b, num_outputs)
        return logits


# endregion


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def main():
    """先按公式算，再让 PyTorch 数。"""
    parser = argparse.ArgumentParser(description="练习 A.3　数参数")
    parser.add_argument("--num-inputs", type=int, default=2, help="输入有几个特征（默认：2，题目的大小）")
    parser.add_argument("--num-outputs", type=int, default=2, help="输出分几类（默认：2，题目的大小）")
    args = parser.parse_args()
    if not (1 <= args.num_inputs <= 10**6 and 1 <= args.num_outputs <= 10**6):
        parser.error("--num-inputs 和 --num-outputs 应在 1 到 100 万之间")

    print("① 按公式：输入数 × 输出数 + 输出数")
    by_hand, largest = 0, 0
    for d_in, d_out in [(args.num_inputs, 30), (30, 20), (20, args.num_outputs)]:
        count = d_in * d_out + d_out  # nn.Linear 默认带偏置，每个输出一个；ReLU 没有参数
        by_hand, largest = by_hand + count, max(largest, count)
        print(f"  {d_in} → {d_out}　{d_in} × {d_out} + {d_out} = {count}")
    print(f"② 加起来：{by_hand}")

    model = NeuralNetwork(args.num_inputs, args.num_outputs)
    # numel 是"有几个数"（number of elements）；冻结了的参数不训练，所以不算。
    num_params = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"③ PyTorch 数：{num_params}，最大的一层占 {largest / num_params:.0%}")

    print("\n这个数字对吗？")
    same = by_hand == num_params
    confirm(f"手算与 PyTorch 数的相同（{by_hand} 与 {num_params}）", same, "忘了偏置，或把 ReLU 也数了")
    if (args.num_inputs, args.num_outputs) == (2, 2):
        confirm(f"与书上的答案相同：752（得到 {num_params}）", num_params == 752, "隐藏层的大小不是 30 和 20")

    print("\n学到什么")
    print("  输入、输出都小的时候，大头是中间那层 30 × 20，它与输入输出有几个无关；输入一多，大头就换成第一层。")
    print("  数参数只要看形状，一个数都不必算：第 4 章用同样的办法数 GPT 的 1.63 亿个。")


if __name__ == "__main__":
    main()
