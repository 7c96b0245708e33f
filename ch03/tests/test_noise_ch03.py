"""自己与自己比：两批一模一样的网络，走过每个实验自己的比法，不该分出高下。

每个实验训练 16 个种子，四次分成不重叠的"甲五个、乙五个"、每次比两个数，共 8 次比较；99% 的区间，8 次里最多一次说分得出。
运行：python -m pytest ch03/tests/test_noise_ch03.py
"""

import importlib.util
import random
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def load(path):
    """按路径载入一个脚本。"""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def span_errors(module, result):
    """exp_positional_encoding 比的两个数：训练过的长度里、2 倍处的错误率。"""
    return tuple(1 - module.span_mean(result["right"], module.SPANS[span]) for span in ("训练过的", "2 倍"))


EXPERIMENTS = {  # 脚本 → 一次很小的训练、从结果里取出实验比的两个数
    "ch03/experiments/exp_head_count.py": (lambda m, seed: m.train_once(2, "线性", 2, 16, 50, seed), lambda m, result: m.milestones(result["curve"])),
    "ch03/experiments/exp_why_scale.py": (lambda m, seed: m.train_once(16, 0.5, 50, seed), lambda m, result: m.milestones(result)),
    "ch02/experiments/exp_positional_encoding.py": (lambda m, seed: m.train_once("sinusoidal", 3, 50, 4, seed), span_errors),
}


@pytest.mark.parametrize("path", EXPERIMENTS)
def test_identical_networks_are_not_told_apart(path):
    module, threads = load(path), torch.get_num_threads()
    once, numbers = EXPERIMENTS[path]
    torch.set_num_threads(1)
    try:
        runs = [numbers(module, once(module, seed)) for seed in range(16)]
    finally:
        torch.set_num_threads(threads)
    order, said = random.Random(0), []
    for _ in range(4):
        chosen = order.sample(runs, 10)
        said += [module.verdict([a[which] - b[which] for a, b in zip(chosen[:5], chosen[5:])]) for which in (0, 1)]
    assert len(said) == 8 and sum(word != "分不出" for word in said) <= 1, said


@pytest.mark.parametrize("path", EXPERIMENTS)
def test_the_comparison_can_tell(path):
    """对照：同样的比法，差得明显的两批分得出。"""
    module = load(path)
    assert module.verdict([0.5, 0.6, 0.55, 0.4, 0.5]) == "更高" and module.verdict([-0.5, -0.6, -0.55, -0.4, -0.5]) == "更低"
