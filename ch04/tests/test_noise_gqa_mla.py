"""自己与自己比：exp_gqa、exp_mla 的比法不应分出假的高下。

同一个结构，种子各不相同，训练许多次；随便分成甲乙两方，照着实验的比法比，几乎全应是"分不出"。
运行：python -m pytest ch04/tests/test_noise_gqa_mla.py
"""

import functools
import importlib.util
import random
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "experiments"
TEXT = FOLDER.parent.parent / "setup" / "data" / "story-en.txt"
TINY = {"context_length": 32, "emb_dim": 16, "n_heads": 4, "n_layers": 1, "drop_rate": 0.0, "qkv_bias": False}


@functools.cache
def load(name):
    """按路径导入一个实验。"""
    spec = importlib.util.spec_from_file_location(f"exp_{name}", FOLDER / f"exp_{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """故事的前八分之一：验证集短，训练才快。"""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT.read_text(encoding="utf-8")[:2560], encoding="utf-8")
    return str(path)


def splits(results, times, pick):
    """结果随便分成五对，times 次；返回每次的五个差。"""
    for turn in range(times):
        order = random.Random(turn).sample(range(len(results)), 10)
        yield [pick(results[a]) - pick(results[b]) for a, b in zip(order[:5], order[5:])]


def false_verdicts(module, results, picks, times=6):
    """几个数（走到四分之一时、最低的……）各比几次，假的高下有几次，一共比了几次。"""
    verdicts = [module.verdict(differences) for pick in picks for differences in splits(results, times, pick)]
    return sum(each != "分不出" for each in verdicts), len(verdicts)


def test_gqa_against_itself(text, monkeypatch):
    """同样是 2 份键和值的 14 个网络：从头训练的两个里程碑，接着练完的损失。"""
    module = load("gqa")
    monkeypatch.setattr(module, "CONFIG", TINY)
    results = [module.train_once(text, 4, 2, 40, seed) for seed in range(14)]
    picks = [lambda each: module.milestones(each["curve"])[0], lambda each: module.milestones(each["curve"])[1], lambda each: each["mean"][-1][1]]
    wrong, total = false_verdicts(module, results, picks)
    assert total >= 16 and wrong <= 1
    really = [each["curve"][0][1] - each["mean"][-1][1] for each in results[:5]]
    assert module.verdict(really) == "更高"  # 真的不同的还分得出：没训练过的比训练过的高


def test_mla_against_itself(text, monkeypatch):
    """同样压成 8 个数的 12 个网络：从头训练的两个里程碑；训练好再压的两个损失。"""
    module = load("mla")
    monkeypatch.setattr(module, "CONFIG", TINY)
    latent = [module.train_once(text, 1, 8, (), 40, seed) for seed in range(12)]
    plain = [module.train_once(text, 4, None, (8,), 40, seed) for seed in range(12)]
    wrong, total = false_verdicts(module, latent, [lambda each: module.milestones(each["curve"])[0], lambda each: module.milestones(each["curve"])[1]])
    more, again = false_verdicts(module, plain, [lambda each: each["squeezed"][8][0], lambda each: each["squeezed"][8][1]])
    assert total + again >= 16 and wrong + more <= 1
    really = [each["squeezed"][8][0] - each["curve"][0][1] for each in plain[:5]]
    assert module.verdict(really) == "更低"  # 真的不同的还分得出：训练过的比没训练过的低


def test_same_steps_take_the_same_time():
    """两个一模一样的走一步，轮流量，比八次：至多一次分出假的快慢。"""
    module = load("gqa")
    attention = module.GroupedQueryAttention(64, 64, 0.0, 8, 2)
    verdicts = []
    for _ in range(8):
        steps = module.prepare_steps({"甲": attention, "乙": attention}, length=256)
        times = module.interleaved(steps, 21)
        verdicts.append(module.compare_times(times["甲"], times["乙"]))
    assert sum(each != "分不出" for each in verdicts) <= 1, verdicts
