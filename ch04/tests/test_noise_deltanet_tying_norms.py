"""第 4 章实验的测试：门控 DeltaNet（黑板、训练之后）、权重共用、归一化与激活函数的比法。

A/A：一模一样的网络，走一遍每个实验自己的比法，几乎不许分出高下；组件与另写的朴素算法比；结论跟着数字走。
运行：python -m pytest ch04/tests/test_noise_deltanet_tying_norms.py
"""

import functools
import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parent.parent / "experiments"
TRAINED = ["linear_attention_recall", "weight_tying", "norms_and_activations"]
NAMES = ["gated_deltanet", *TRAINED]
VERDICTS = re.compile("更低|更高|分不出")


@functools.cache
def load(name):
    """按路径导入一个实验。"""
    spec = importlib.util.spec_from_file_location(f"exp_{name}", FOLDER / f"exp_{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def command_line(monkeypatch, capsys, tmp_path):
    """command_line(实验, 参数…, patch=要换掉的) → 退出码、stdout、stderr；图片和训练结果写到临时文件夹。"""

    def call(name, *args, patch=None):
        module = load(name)
        monkeypatch.setattr(module, "OUTPUTS", tmp_path / "outputs")
        for key, value in (patch or {}).items():
            monkeypatch.setattr(module, key, value)
        monkeypatch.setattr(sys, "argv", [f"exp_{name}.py", *map(str, args)])
        capsys.readouterr()
        try:
            module.main()
            code = 0
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture(autouse=True)
def one_thread():
    """矩阵都很小：一个线程最快，也不与别的测试互相等。"""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---------- A/A：同一个网络，自己与自己比 ----------


def false_verdicts(module, curves):
    """把同一个网络的许多条曲线十条一组，前五条与后五条比，走早的、最低的两遍。

    返回:
        tuple[int, int]: 分出（假的）高下几次，一共比了几次
    """
    ends = [module.milestones(curve) for curve in curves]
    verdicts = [
        module.verdict([mine[which] - other[which] for mine, other in zip(ends[start : start + 5], ends[start + 5 : start + 10])])
        for start in range(0, len(ends), 10)
        for which in (0, 1)
    ]
    return sum(each != "分不出" for each in verdicts), len(verdicts)


def tiny_text_curves(module, make, seeds, length=16, steps=40):
    """在一小段文字上，每个种子训练一个 make(词表大小, 种子)。"""
    text = (FOLDER.parents[1] / "setup" / "data" / "story-en.txt").read_text(encoding="utf-8")[:4000]
    chars = sorted(set(text))
    ids = torch.tensor([chars.index(char) for char in text])
    return [module.train(make(len(chars), seed), ids[:3600], ids[3600:], length, steps, seed) for seed in seeds]


def test_identical_tied_networks_are_not_told_apart():
    module = load("weight_tying")
    cfg = module.small_config(16) | {"n_layers": 1}
    curves = tiny_text_curves(module, lambda size, seed: module.build(True, True, cfg | {"vocab_size": size}, seed), range(40))
    wrong, total = false_verdicts(module, curves)
    assert total == 8 and wrong <= 1


def test_identical_norms_are_not_told_apart():
    module = load("norms_and_activations")

    def make(size, seed):
        torch.manual_seed(seed)
        return module.GPTModel(module.shape_of(3, size) | {"emb_dim": 16, "n_heads": 2, "n_layers": 1} | module.RECIPES["RMSNorm"])

    wrong, total = false_verdicts(module, tiny_text_curves(module, make, range(40)))
    assert total == 8 and wrong <= 1


def test_identical_boards_are_not_told_apart():
    module = load("linear_attention_recall")
    wrong, total = false_verdicts(module, [module.train_recall("DeltaNet", 2, 1, 40, seed)[0] for seed in range(40)])
    assert total == 8 and wrong <= 1


def test_identical_ways_of_writing_are_not_told_apart():
    """同一种写法、不同的随机键值：十组黑板认错的比例，配对相减。"""
    module = load("gated_deltanet")
    errors = [module.recall(32, erase, 1.0, seed)[0] for erase in (True, False) for seed in range(10)]
    verdicts = [module.verdict([a - b for a, b in zip(errors[i], errors[i + 1])]) for i in range(0, 20, 2)]
    assert sum(each != "分不出" for each in verdicts) <= 1
    assert module.verdict([a - b for a, b in zip(errors[10], errors[0])]) == "更低"  # 真的不同的，分得出来


# ---------- 像读者那样运行 ----------


@pytest.mark.parametrize("name", NAMES)
def test_quick_run(command_line, tmp_path, name):
    """--quick：自查全过，画了图，不下结论。"""
    code, out, err = command_line(name, "--quick")
    assert code == 0 and "✗" not in out and out.count("✓") >= 3, err
    assert (tmp_path / "outputs" / f"{name}.png").is_file()
    assert "看流程，不下结论" in out and not VERDICTS.search(out.split("这个数字对吗？")[0])


@pytest.mark.parametrize(
    ("name", "args", "says"),
    [
        ("gated_deltanet", ["--stride", 0], "--stride 应在 1 到 3"),
        ("gated_deltanet", ["--steps", 3], "unrecognized arguments"),
        ("linear_attention_recall", ["--chunk", 0], "--chunk 应在 1 到 1024"),
        *[(name, ["--steps", 0], "--steps 应在 1 到") for name in TRAINED],
        *[(name, ["--seeds", 4], "--seeds 应在 5 到 10 之间，不能是 4") for name in TRAINED],
        *[(name, ["--seed", -1], "--seed 应在 0 到") for name in NAMES],
    ],
)
def test_bad_arguments(command_line, name, args, says):
    code, out, err = command_line(name, *args)
    assert (code, out) == (2, "") and says in err.splitlines()[-1] and "Traceback" not in err


@pytest.mark.parametrize("name", NAMES)
def test_help(command_line, name):
    code, out, _ = command_line(name, "--help")
    assert code == 0 and "实验　" in out and "--quick" in out


# ---------- 结论跟着数字走 ----------


def curve_to(low, steps=20):
    """一条假的曲线：从 4 直线降到 low。"""
    return [(step, 4 - (4 - low) * step / steps) for step in range(steps + 1)]


def test_norms_verdicts_follow_the_numbers(command_line):
    def fake(job, cases, folder, workers=None):
        ends = {"post（后置）": 3.0, "ReLU": 1.5}
        return {case: curve_to(ends.get(case[2], 2.0) + 0.01 * (case[4] % 1000) * (1 if case[2] == "SwiGLU" else 0.1)) for case in cases}

    code, out, _ = command_line("norms_and_activations", "--layers", 3, patch={"side_by_side": fake})
    rows = {line.split()[0]: line for line in out.splitlines() if "走到四分之一时" in line}
    assert code == 0 and rows["post（后置）"].count("更高") == 2 and rows["ReLU"].count("更低") == 2
    assert rows["RMSNorm"].count("分不出") == 2 and rows["不归一化"].count("分不出") == 2


def test_tying_verdicts_follow_the_numbers(command_line):
    """缩小的都高 0.5，共用不起作用：只改初始化是更高，只改共用是分不出。"""
    def fake(job, cases, folder, workers=None):
        return {case: (curve_to(3 + 0.5 * case[2] + 0.01 * (case[4] % 1000)), case[1]) for case in cases}

    code, out, _ = command_line("weight_tying", patch={"side_by_side": fake})
    rows = [line for line in out.splitlines() if " 减 " in line]
    assert code == 0 and "✗" not in out and len(rows) == 6
    assert ["更高" in row for row in rows] == [True, True, False, False, True, True]
    assert ["分不出" in row for row in rows] == [False, False, True, True, False, False]


def test_crossing_needs_quartiles_apart():
    crossing = load("linear_attention_recall").crossing
    attention = {128: [1, 2, 3], 256: [3, 4, 5], 512: [9, 10, 11], 1024: [40, 41, 42]}
    assert crossing(attention, {128: [4, 5, 6], 256: [4, 5, 6], 512: [6, 7, 8], 1024: [9, 10, 11]}) == (128, 512)  # 256 的相交，分不出
    assert crossing(attention, {t: [100, 101, 102] for t in attention}) == (1024, 0)
    assert crossing(attention, {t: [0.1, 0.2, 0.3] for t in attention}) == (0, 128)


# ---------- 黑板 ----------


def test_read_is_by_direction():
    """读出来的放大十倍，认出来的不变；键互相垂直时，两种写法都一个不错。"""
    module = load("gated_deltanet")
    torch.manual_seed(0)
    keys, values = torch.linalg.qr(torch.randn(5, 1, 16, 16))[0], torch.randn(5, 1, 16, 16)
    for erase in (True, False):
        board = module.blackboard(keys, values, erase)
        nearest, cosine = module.read(keys, 10 * board, values)
        assert torch.equal(nearest, torch.arange(16).expand(5, 16)) and torch.allclose(cosine, torch.ones(5, 16), atol=1e-4)


@pytest.mark.parametrize("erase", [True, False])
@pytest.mark.parametrize("keep", [1.0, 0.9])
def test_blackboard_equals_a_plain_loop(erase, keep):
    module = load("gated_deltanet")
    torch.manual_seed(0)
    keys, values = module.random_pairs(20, 8, 10)
    board = torch.zeros(10, 8, 8)
    for i in range(20):
        key, value = keys[:, 0, i], values[:, 0, i]
        board = board * keep
        old = torch.einsum("bk,bkv->bv", key, board) if erase else 0
        board = board + torch.einsum("bk,bv->bkv", key, value - old)
    assert torch.allclose(module.blackboard(keys, values, erase, keep)[:, 0], board, atol=1e-4)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_the_header_says_holds(seed):
    module = load("gated_deltanet")
    delta, plain = module.recall(64, True, 1.0, seed), module.recall(64, False, 1.0, seed)
    assert module.verdict([b - a for a, b in zip(delta[0], plain[0])]) == "更低"  # 每个键一次：直接加的认错的少
    assert sum(delta[1][-8:]) > 7.5 and sum(delta[1][:8]) < 1 and abs(sum(plain[1][-8:]) - sum(plain[1][:8])) < 1
    torch.manual_seed(seed)
    (new, kept), (blurred, _), (newer, lost) = (module.overwriting(8, rule, 123) for rule in ((True, 1.0), (False, 1.0), (False, 0.95)))
    assert new > 0.95 and kept > 0.8 and blurred < 0.25 and newer > 0.75 and lost < 0.1
    gated = module.recall(64, False, 0.95, seed)[1]
    assert sum(gated[-16:]) > sum(plain[1][-16:]) + 1 and sum(gated[:16]) < 1


# ---------- 训练之后 ----------


def test_gated_sum_equals_a_plain_loop():
    module = load("linear_attention_recall")
    torch.manual_seed(0)
    queries, keys, values, alpha, beta, state = module.random_inputs(2, 3, 12, 4)
    board, wanted = torch.zeros(2, 3, 4, 4), []
    for i in range(12):
        board = board * alpha[:, :, i, None, None].exp() + beta[:, :, i, None, None] * keys[:, :, i, :, None] * values[:, :, i, None, :]
        wanted.append((queries[:, :, i, None] @ board)[:, :, 0])
    read, _ = module.GatedSum(4, 12, 0.0, 3).update(queries, keys, values, alpha, beta, state)
    assert torch.allclose(read, torch.stack(wanted, dim=2), atol=1e-4)


def test_questions_ask_for_the_newest_value():
    module = load("linear_attention_recall")
    keys, values, answers = module.make_questions(20, 4, 3, torch.Generator().manual_seed(5))
    assert keys.shape == values.shape == (20, 16) and (values[:, 12:] == module.VALUES).all()
    for row in range(20):
        board = dict(zip(keys[row, :12].tolist(), values[row, :12].tolist()))  # 字典：后写的盖住先写的
        assert len(board) == 4 and [board[key] for key in keys[row, 12:].tolist()] == answers[row].tolist()


def test_recall_training_is_paired_and_learns():
    module = load("linear_attention_recall")
    assert module.train_recall("直接加", 2, 1, 3, 7) == module.train_recall("直接加", 2, 1, 3, 7)
    curve, right = module.train_recall("注意力", 2, 1, 120, 7)
    assert abs(curve[0][1] - 2.77) < 0.6 and curve[-1][1] < 1 and right > 0.7


@pytest.mark.parametrize("kind", ["注意力", "DeltaNet", "直接加"])
def test_mixers_do_not_see_the_future(kind):
    module = load("linear_attention_recall")
    torch.manual_seed(0)
    mixer, x = module.make_mixer(kind, 8, 8, 12, 2), torch.randn(1, 12, 8)
    changed = x.clone()
    changed[0, 7:] += 1
    first, second = mixer(x), mixer(changed)
    assert torch.allclose(first[:, :7], second[:, :7], atol=1e-6) and not torch.allclose(first[:, 7:], second[:, 7:], atol=1e-3)


def test_language_models_are_equally_large():
    module = load("linear_attention_recall")
    one, two = (sum(p.numel() for p in module.make_gpt(kind, 55).parameters()) for kind in ("注意力", "DeltaNet"))
    assert abs(one / two - 1) < 1e-3


# ---------- 权重共用 ----------


def test_same_seed_gives_the_same_blocks():
    """四种做法只差两头：块里的权重逐位相同；缩小之后，两头的标准差都是 0.02。"""
    module = load("weight_tying")
    cfg = module.small_config(32)
    models = [module.build(*variant, cfg, 5) for variant in module.VARIANTS.values()]
    for model in models[1:]:
        assert all(torch.equal(a, b) for a, b in zip(models[0].trf_blocks.parameters(), model.trf_blocks.parameters()))
    for model, (tied, small) in zip(models, module.VARIANTS.values()):
        assert (model.out_head.weight is model.tok_emb.weight) is tied
        if small:
            assert all(each.weight.std().item() == pytest.approx(0.02, rel=1e-3) for each in (model.tok_emb, model.pos_emb, model.out_head))


def test_small_tokenizer_is_gpt2_with_fewer_merges():
    module = load("weight_tying")
    text = "Every effort moves you. 每一步都算数。"
    for size in (256, 512, 2000):
        ids = module.small_tokenizer(size).encode(text)
        assert max(ids) < size and module.small_tokenizer(size).decode(ids) == text
    assert len(module.small_tokenizer(256).encode(text)) == len(text.encode()) and len(module.small_tokenizer(2000).encode("Every effort")) < len("Every effort")
