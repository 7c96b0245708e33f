"""第 3 章练习的测试：像读者那样各跑一遍，读它打印的数字；与 llms_from_scratch 的类比较；用错时的报错。

运行：python -m pytest ch03/tests/test_exercises_3.py
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
    "3.1": "exercise_3_1_copy_weights.py",
    "3.2": "exercise_3_2_two_dimensional_wrapper.py",
    "3.3": "exercise_3_3_gpt2_size_attention.py",
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
    return pytest.importorskip("llms_from_scratch.ch03", reason="没有装 llms-from-scratch，无法与它比较")


def matrix(output, label, columns):
    """标签之后的第一个张量，按每行几个数排好。"""
    assert output.count(label) == 1, f"输出里应当正好有一处「{label}」"
    text = output.split(label)[1].split("tensor(")[1].split(")")[0]
    return torch.tensor([float(number) for number in re.findall(r"-?\d+\.\d+(?:e[-+]\d+)?", text)]).view(-1, columns)


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
        ("3.1", ["--d-out", "0"], "--d-out 应在"),
        ("3.1", ["--d-out", "二"], "invalid int value"),
        ("3.2", ["--heads", "3"], "没法平均分给 3 个头"),
        ("3.2", ["--heads", "0"], "--heads 应在"),
        ("3.2", ["--d-total", "-2"], "--d-total 应在"),
        ("3.3", ["--heads", "7"], "不能被 num_heads=7 整除"),
        ("3.3", ["--heads", "0"], "--heads 至少是 1"),
        ("3.3", ["--head-dim", "1"], "unrecognized arguments"),
    ],
)
def test_bad_input(command_line, number, args, says):
    code, out, err = command_line(number, *args)
    assert (code, out) == (2, "") and "Traceback" not in err and says in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("number", "args"),
    [("3.1", ["--d-out", 1]), ("3.1", ["--d-out", 3]), ("3.2", ["--heads", 1]), ("3.2", ["--heads", 4, "--d-total", 8]), ("3.3", ["--heads", 1])],
)
def test_other_sizes(command_line, number, args):
    """换别的合法参数，也没有 ✗。"""
    code, out, _ = command_line(number, *args)
    assert code == 0 and "✗" not in out and "✓" in out


@pytest.mark.parametrize("number", EXERCISES)
def test_help_is_chinese(command_line, number):
    code, out, _ = command_line(number, "--help")
    assert code == 0 and "练习 " in out and "默认" in out


# ---- 3.1 ----

BOOK_V2 = torch.tensor([[-0.0739, 0.0713], [-0.0748, 0.0703], [-0.0749, 0.0702], [-0.0760, 0.0685], [-0.0763, 0.0679], [-0.0754, 0.0693]])


def test_answer_3_1(command_line):
    """拷贝之后，两张表都是书上 3.4.2 节 v2 的输出。"""
    _, out, _ = command_line("3.1")
    assert "v1.W_query (3, 2)　v2.W_query.weight (2, 3)" in out
    for label in ("③ v1 拷贝之后的输出", "   v2 的输出"):
        assert torch.equal(matrix(out, label, 2), BOOK_V2)
    assert "3 → 2　RuntimeError" in out and "3 → 3　不报错" in out


@pytest.mark.parametrize("size", [(3, 2), (3, 3), (5, 8)])
def test_copy_weights_between_reference_classes(reference, size):
    """copy_weights 用在原书作者的两个类上，也让它们的输出相同，而且两边互不相干。"""
    torch.manual_seed(0)
    v1, v2, x = reference.SelfAttention_v1(*size), reference.SelfAttention_v2(*size), torch.randn(6, size[0])
    assert not torch.allclose(v1(x), v2(x), atol=1e-3)
    load("3.1").copy_weights(v2, v1)
    copied = v1(x)
    assert torch.allclose(copied, v2(x), atol=1e-6)
    with torch.no_grad():
        v2.W_value.weight.zero_()
    assert torch.equal(v1(x), copied)


def test_the_book_solution_shares_memory(reference):
    """脚本里说的：原书 nn.Parameter(weight.T) 的写法没有复制，两个模型共用一块内存。"""
    v2 = reference.SelfAttention_v2(3, 2)
    assert torch.nn.Parameter(v2.W_query.weight.T).data_ptr() == v2.W_query.weight.data_ptr()


# ---- 3.2 ----

ANSWER = torch.tensor([[-0.5740, 0.2216], [-0.7320, 0.0155], [-0.7774, -0.0546], [-0.6979, -0.0817], [-0.6538, -0.0957], [-0.6424, -0.1065]])
# 原书仓库 exercise-solutions.ipynb 里贴的（过时的）输出。
STALE = [
    [-9.1476e-02, 3.4164e-02],
    [-2.6796e-01, -1.3427e-03],
    [-4.8421e-01, -4.8909e-02],
    [-6.4808e-01, -1.0625e-01],
    [-8.8380e-01, -1.7140e-01],
    [-1.4744e00, -3.4327e-01],
]


def test_answer_3_2(command_line, reference):
    """打印的六行，是量得的答案，也是原书作者自己的类现在算出的；过时的那六行由旧写法得到（末位的舍入随 CPU）。"""
    _, out, _ = command_line("3.2")
    assert "② 输出 (2, 6, 2)" in out
    printed = matrix(out, "② 输出", 2)
    assert torch.allclose(printed, ANSWER, rtol=0, atol=1.01e-4)
    assert torch.allclose(matrix(out, "③ 旧写法", 2), torch.tensor(STALE), rtol=0, atol=1.01e-4)
    torch.manual_seed(123)
    theirs = reference.MultiHeadAttentionWrapper(3, 1, 6, 0.0, num_heads=2)
    batch = torch.stack([load("3.2").inputs] * 2)
    assert torch.allclose(printed, theirs(batch)[1], atol=6e-5)


def test_book_3_6_1(command_line):
    """--d-total 4 就是书上 3.6.1 节的设置。"""
    _, out, _ = command_line("3.2", "--d-total", 4)
    rows = matrix(out, "② 输出", 4)
    assert rows[0].tolist() == pytest.approx([-0.4519, 0.2216, 0.4772, 0.1063], abs=1e-6)
    assert rows[5].tolist() == pytest.approx([-0.5299, -0.1081, 0.5077, 0.3493], abs=1e-6)


# ---- 3.3 ----


@pytest.mark.parametrize("heads", [12, 1, 24])
def test_answer_3_3(command_line, reference, heads):
    """2,360,064 个参数，与头数无关；原书作者的类也是这么多。"""
    _, out, _ = command_line("3.3", "--heads", heads)
    theirs = reference.MultiHeadAttention(768, 768, 1024, 0.0, heads)
    count = sum(p.numel() for p in theirs.parameters())
    assert count == 2_360_064 and f"一共 {count:,} =" in out and f"每个 {768 // heads} 维" in out
    listed = dict(re.findall(r"^ +([\w.]+) +\([\d, ]+\) +([\d,]+)$", out, re.MULTILINE))
    assert {name: int(number.replace(",", "")) for name, number in listed.items()} == {name: p.numel() for name, p in theirs.named_parameters()}
    assert f"(1, {heads}, 1024, 1024)，占 {heads * 4} MB" in out
