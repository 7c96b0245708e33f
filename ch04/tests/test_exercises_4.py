"""第 4 章练习的测试：像读者那样各跑一遍，读它打印的数字；与 llms_from_scratch 的模型比较；用错时的报错。

运行：python -m pytest ch04/tests/test_exercises_4.py
大模型都建在 meta 设备上，不占内存。
"""

import functools
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parent.parent / "experiments"
EXERCISES = {
    "4.1": "exercise_4_1_block_parameters.py",
    "4.2": "exercise_4_2_gpt2_sizes.py",
    "4.3": "exercise_4_3_separate_dropout.py",
}


@functools.cache
def load(number):
    """按路径导入一道练习。"""
    spec = importlib.util.spec_from_file_location(Path(EXERCISES[number]).stem, FOLDER / EXERCISES[number])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def command_line(monkeypatch, capsys):
    """command_line(练习, 参数…) → 退出码、stdout、stderr；在本进程里跑，省去导入 PyTorch 的几秒。"""

    def call(number, *args):
        monkeypatch.setattr(sys, "argv", [EXERCISES[number], *map(str, args)])
        code = 0
        try:
            load(number).main()
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def reference():
    return pytest.importorskip("llms_from_scratch.ch04", reason="没有装 llms-from-scratch，无法与它比较")


def test_every_exercise_is_listed():
    assert sorted(path.name for path in FOLDER.glob("exercise_*.py")) == sorted(EXERCISES.values())
    readme = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    assert all(name in readme for name in EXERCISES.values())


@pytest.mark.parametrize("number", EXERCISES)
def test_runs_as_a_reader_would(number, tmp_path):
    """从别的文件夹运行：退出码 0，自查全过，有「学到什么」，不留文件。"""
    env = os.environ | {"PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(FOLDER / EXERCISES[number])], cwd=tmp_path, env=env, capture_output=True, encoding="utf-8", timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert "✓" in done.stdout and "✗" not in done.stdout
    assert "学到什么" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "args", "says"),
    [
        ("4.1", ["--emb-dim", "100"], "64 的倍数"),
        ("4.1", ["--emb-dim", "0"], "64 的倍数"),
        ("4.1", ["--emb-dim", "宽"], "invalid int value"),
        ("4.2", ["--size", "3B"], "invalid choice: '3B'"),
        ("4.2", ["--emb-dim", "768"], "unrecognized arguments"),
        ("4.3", ["--rate", "1"], "0.01 到 0.9"),
        ("4.3", ["--rate", "nan"], "0.01 到 0.9"),
        ("4.3", ["--rate"], "expected one argument"),
    ],
)
def test_bad_input(command_line, number, args, says):
    code, out, err = command_line(number, *args)
    assert (code, out) == (2, "") and "Traceback" not in err and says in err.splitlines()[-1]


@pytest.mark.parametrize("number", EXERCISES)
def test_help_is_chinese(command_line, number):
    code, out, _ = command_line(number, "--help")
    assert code == 0 and "练习 " in out and "默认" in out


def count(module):
    return sum(p.numel() for p in module.parameters())


# ---- 4.1 ----


@pytest.mark.parametrize("emb_dim", [768, 1600])
def test_answer_4_1(command_line, reference, emb_dim):
    """打印的每个部件，与原书作者的 TransformerBlock 相同。"""
    code, out, _ = command_line("4.1", "--emb-dim", emb_dim)
    cfg = {"emb_dim": emb_dim, "context_length": 1024, "n_heads": emb_dim // 64, "drop_rate": 0.1, "qkv_bias": False}
    with torch.device("meta"):
        theirs = reference.TransformerBlock(cfg)
    printed = {name: int(number.replace(",", "")) for name, number in re.findall(r"^ +(att|ff|norm\d) +([\d,]+)　", out, re.MULTILINE)}
    assert code == 0 and "✗" not in out
    assert printed == {name: count(getattr(theirs, name)) for name in ("att", "ff", "norm1", "norm2")}
    if emb_dim == 768:
        assert (printed["att"], printed["ff"]) == (2_360_064, 4_722_432) and "2.0010 倍" in out


# ---- 4.2 ----

SIZES = {
    "small": (768, 12, 12, "163,009,536", "124,412,160", "621.83"),
    "medium": (1024, 24, 16, "406,212,608", "354,749,440", "1549.58"),
    "large": (1280, 36, 20, "838,220,800", "773,891,840", "3197.56"),
    "xl": (1600, 48, 25, "1,637,792,000", "1,557,380,800", "6247.68"),
}


def test_answer_4_2(command_line, reference):
    """四种规模的总数、共用时、MB：与书的答案相同，与原书作者的 GPTModel 也相同。"""
    code, out, _ = command_line("4.2")
    assert code == 0 and "✗" not in out
    for name, (emb_dim, n_layers, n_heads, total, tied, megabytes) in SIZES.items():
        assert f"{name}　d = {emb_dim}，{n_layers} 块，{n_heads} 头，每头 64 维" in out
        assert re.search(rf"{name}　d = .+\n  总数 {total}　共用时 {tied}（.+）　占内存 {megabytes} MB\n", out)
        cfg = {"vocab_size": 50257, "context_length": 1024, "drop_rate": 0.1, "qkv_bias": False, "emb_dim": emb_dim, "n_layers": n_layers, "n_heads": n_heads}
        with torch.device("meta"):
            theirs = reference.GPTModel(cfg)
        assert (f"{count(theirs):,}", f"{count(theirs) - count(theirs.out_head):,}") == (total, tied)


def test_counting_allocates_nothing(monkeypatch):
    """数的时候，每个参数都在 meta 上，没有真的分配。"""
    module, built = load("4.2"), []

    class Spy(module.GPTModel):
        def __init__(self, cfg):
            super().__init__(cfg)
            built.extend(self.parameters())

    monkeypatch.setattr(module, "GPTModel", Spy)
    module.count(*module.CONFIGS["xl"])
    assert built and all(parameter.is_meta for parameter in built)


@pytest.mark.parametrize("size", SIZES)
def test_one_size(command_line, size):
    code, out, _ = command_line("4.2", "--size", size)
    assert code == 0 and "✗" not in out and out.count("总数") == 1 and SIZES[size][3] in out


# ---- 4.3 ----

TINY = {"vocab_size": 100, "context_length": 16, "emb_dim": 48, "n_heads": 4, "n_layers": 3, "qkv_bias": False}


@pytest.mark.parametrize("training", [True, False])
def test_equal_rates_are_the_original_model(reference, training):
    """三处都取 0.1 时，同一个种子的权重、训练模式和评估模式的输出，与原书作者的 GPTModel 逐位相同。"""
    models = []
    for build, rates in [(load("4.3").GPTModel, dict.fromkeys(load("4.3").KEYS, 0.1)), (reference.GPTModel, {"drop_rate": 0.1})]:
        torch.manual_seed(123)
        model = build(TINY | rates).train(training)
        idx = torch.randint(100, (2, 16))
        models.append((model(idx), sum(p.double().sum().item() for p in model.parameters())))
    (ours, our_sum), (theirs, their_sum) = models
    assert our_sum == their_sum and torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize(
    ("key", "places"),
    [
        ("drop_rate_emb", ["drop_emb"]),
        ("drop_rate_attn", [f"trf_blocks.{i}.att.dropout" for i in range(3)]),
        ("drop_rate_shortcut", [f"trf_blocks.{i}.drop_shortcut" for i in range(3)]),
    ],
)
def test_each_key_reaches_its_place(key, places):
    """每个键只管它该管的那几层 Dropout，一个不多，一个不少。"""
    module = load("4.3")
    model = module.GPTModel(TINY | dict.fromkeys(module.KEYS, 0.0) | {key: 0.3})
    assert [name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Dropout) and layer.p == 0.3] == places


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.9])
def test_answer_4_3(command_line, rate):
    """全关不抖；每处单独打开都抖；全开最抖。"""
    code, out, _ = command_line("4.3", "--rate", rate)
    assert code == 0 and "✗" not in out
    jitters = [float(number) for number in re.findall(r"抖动 (\d\.\d{4})$", out, re.MULTILINE)]
    assert len(jitters) == 5 and jitters[0] == 0 and min(jitters[1:]) > 0 and jitters[4] == max(jitters)
