"""测试设备医生：三种冒充的加速器（算错、缺运算、内存不够）都要被认出来，说出是哪个组件、怎么办。"""

import contextlib
import importlib.util
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def load(path):
    """按路径导入一个工具。"""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


doctor = load("setup/doctor.py")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """几个测试一起跑时，线程互相抢 CPU 反而慢。"""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Tamper(TorchDispatchMode):
    """在每个运算上动手脚：trick(运算的名字, 结果) 返回动过的结果，或抛出异常。"""

    def __init__(self, trick):
        super().__init__()
        self.trick = trick

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.trick(func.name(), func(*args, **(kwargs or {})))


def fake(trick, precision="fp32"):
    """冒充的加速器：在 CPU 上算，途中动手脚。"""

    class Fake(doctor.Machine):
        def __init__(self, device, precision=precision):
            super().__init__(device, precision)
            self.name = f"假 {precision}"

        def computing(self):
            return Tamper(trick)

    return Fake


@pytest.fixture(scope="module")
def parts():
    return {(chapter, name): rest for chapter, name, *rest in doctor.components()}


def diagnose(parts, trick, name, precision="fp32"):
    """用冒充的加速器查一个组件。"""
    build, inputs, call = next(rest for (_, part), rest in parts.items() if part == name)
    expected = doctor.compute(doctor.Machine(CPU, "fp64"), build, inputs, call)
    return doctor.check_component(fake(trick)(CPU, precision), build, inputs, call, expected)


def honest(name, result):
    """什么手脚也不动。"""
    return result


def test_every_chapter_has_a_component(parts):
    assert {chapter for chapter, _ in parts} == {"ch02", "ch03", "ch04", "ch05", "ch06", "ch07", "appendix-A"}
    names = {name for _, name in parts}
    assert {"MultiHeadAttention", "LayerNorm", "GELU", "TransformerBlock", "GPTModel", "分类头", "NeuralNetwork"} <= names


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_honest_device_passes(parts, precision):
    for _, name in parts:
        result = diagnose(parts, honest, name, precision)
        assert result["ok"], (name, result)


def test_float32_is_not_compared_with_itself(parts):
    """参照真的是 float64：float32 的误差不是 0，但很小。"""
    errors = diagnose(parts, honest, "GPTModel")["errors"]
    assert all(1e-9 < value < 1e-4 for value in errors)


# ── 算错 ──


def scaled(operator, factor):
    """某个运算的结果总是差一点点。"""
    return lambda name, result: result * factor if operator in name else result


@pytest.mark.parametrize("name", ["MultiHeadAttention", "TransformerBlock", "GPTModel", "损失与训练一步", "分类头", "带 -100 的损失", "NeuralNetwork"])
def test_wrong_matmul_is_caught(parts, name):
    """矩阵乘法差千分之五：人眼看损失看不出来，医生看得出来。"""

    def trick(operator, result):
        return result * 1.005 if operator in ("aten::mm", "aten::addmm", "aten::bmm") else result

    result = diagnose(parts, trick, name)
    assert not result["ok"] and "算错了" in result["what"] and "--device cpu" in result["advice"]


def test_wrong_embedding_is_caught(parts):
    assert "前向差" in diagnose(parts, scaled("aten::embedding", 1.001), "输入嵌入（一批数据）")["what"]


def test_wrong_layernorm_is_caught(parts):
    assert "前向差" in diagnose(parts, scaled("aten::var", 1.01), "LayerNorm")["what"]


def test_wrong_gelu_is_caught(parts):
    assert "前向差" in diagnose(parts, scaled("aten::tanh", 1.001), "GELU")["what"]


def test_only_the_backward_is_wrong(parts):
    """前向对、反向错：说的是反向，没有说前向，也没有怪到更新头上。"""
    what = diagnose(parts, scaled("backward", 1.1), "带 -100 的损失")["what"]
    assert "反向差" in what and "前向" not in what and "更新" not in what


def test_only_the_optimizer_is_wrong(parts):
    """优化器一步也没走（addcdiv 不起作用）：pytorch/pytorch#118115 就是这样。"""

    class Lazy(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "addcdiv" in func.name():
                return args[0]
            return func(*args, **(kwargs or {}))

    class Machine(doctor.Machine):
        def computing(self):
            return Lazy()

    build, inputs, call = next(rest for (_, name), rest in parts.items() if name == "转置的权重")
    expected = doctor.compute(doctor.Machine(CPU, "fp64"), build, inputs, call)
    what = doctor.check_component(Machine(CPU), build, inputs, call, expected)["what"]
    assert "更新差" in what and "前向" not in what and "反向" not in what


def test_nan_is_caught(parts):
    result = diagnose(parts, lambda name, result: result * float("nan") if "softmax" in name and "backward" not in name else result, "MultiHeadAttention")
    assert not result["ok"] and "nan" in result["what"]


def test_transposed_weights_are_really_transposed(parts):
    """查的正是不连续的权重：把它当成连续的来读，就要被发现。"""
    linear = doctor.transposed_linear()
    assert not linear.weight.is_contiguous()

    class Careless(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.name() == "aten::t" and not args[0].is_contiguous() and args[0].shape == (256, 64):
                args = (torch.as_strided(args[0], args[0].shape, (64, 1)),)  # 忘了看 stride
            return func(*args, **(kwargs or {}))

    class Machine(doctor.Machine):
        def computing(self):
            return Careless()

    build, inputs, call = next(rest for (_, name), rest in parts.items() if name == "转置的权重")
    expected = doctor.compute(doctor.Machine(CPU, "fp64"), build, inputs, call)
    assert "前向差" in doctor.check_component(Machine(CPU), build, inputs, call, expected)["what"]


def test_wrong_generation_and_sampling_are_caught(parts):
    pretrain = doctor.load("ch05/main/gpt_train.py")
    _, written = doctor.check_generation(doctor.Machine(CPU, "fp64"), pretrain, None)
    assert doctor.check_generation(doctor.Machine(CPU), pretrain, written)[0]["ok"]

    def argmax(name, result):
        return result + 1 if name == "aten::argmax" else result

    result, _ = doctor.check_generation(fake(argmax)(CPU), pretrain, written)
    assert "贪心写的第 1 个词元与参照不同" in result["what"]

    def multinomial(name, result):
        return result + (torch.arange(32).unsqueeze(1) == 0) if name == "aten::multinomial" else result  # 每批 32 个里错 1 个

    result, _ = doctor.check_generation(fake(multinomial)(CPU), pretrain, written)
    assert "抽 1024 次，32 次抽中概率为 0 的词元" in result["what"] and "贪心不受影响" in result["advice"]


# ── 缺运算、内存不够、别的错 ──


def raising(operator, problem):
    """走到某个运算就抛出异常。"""

    def trick(name, result):
        if operator in name:
            raise problem
        return result

    return trick


def test_missing_operator_is_named(parts):
    problem = NotImplementedError("The operator 'aten::bmm' is not currently implemented for the MPS device. If you want this op…")
    result = diagnose(parts, raising("aten::bmm", problem), "MultiHeadAttention")
    assert result["what"] == "缺少运算 aten::bmm" and "PyTorch" in result["advice"]
    assert diagnose(parts, raising("aten::bmm", problem), "GELU")["ok"]  # 用不到它的组件不受影响
    assert "PYTORCH_ENABLE_MPS_FALLBACK=1" in doctor.explain(problem, torch.device("mps"))[1]


@pytest.mark.parametrize("problem", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)")])
def test_out_of_memory(parts, problem):
    result = diagnose(parts, raising("embedding", problem), "GPTModel")
    assert result["what"] == "内存不够" and "batch" in result["advice"]


def test_other_errors_are_one_line(parts):
    result = diagnose(parts, raising("aten::tanh", RuntimeError("奇怪的错\n第二行")), "GELU")
    assert result["what"] == "报错：奇怪的错"


# ── 整个报告 ──


def examine(monkeypatch, capsys, trick=None, mini=True):
    """查一次，返回是否全对、打印的内容。mini 换得更小，省时间。"""
    real = doctor.load

    def small(path):
        module = real(path)
        if path == "ch05/main/gpt_train.py":
            module.MODEL_CONFIGS = {"mini": doctor.CONFIG | {"context_length": 256}}
        return module

    monkeypatch.setattr(doctor, "load", small)
    ok = doctor.examine([CPU], lambda device: None, 16.0, *([fake(trick)] if trick else []))
    return ok, capsys.readouterr().out


def test_report_without_accelerator(monkeypatch, capsys):
    ok, out = examine(monkeypatch, capsys)
    assert ok and "✗" not in out
    assert "没有查加速器" in out and "[cpu fp32]" in out and "[cpu bf16]" in out and "每个组件都算对了" in out
    for part in (torch.__version__, "16.0 GB", "逐词元生成", "训练、微调", "ch07 带 -100 的损失", "两条线之间"):
        assert part in out
    assert re.search(r"速度　生成 [\d.e+]+ 词元/秒，训练 [\d.e+]+ 千词元/秒", out)
    assert str(Path.home()) not in out and str(ROOT) not in out  # 贴出去的报告里没有个人的路径


def test_report_on_a_lying_accelerator(monkeypatch, capsys):
    ok, out = examine(monkeypatch, capsys, scaled("aten::addmm", 1.01))
    assert not ok and "怎么办" in out
    assert re.search(r"✗ appendix-A NeuralNetwork，假 fp32：算错了：前向差 \S+（应小于 1e-04）", out)
    assert "训练、微调　没有一种算得全对" in out
    assert "✓ ch04 LayerNorm" in out  # 没有错的不冤枉


def test_report_when_memory_runs_out(monkeypatch, capsys):
    ok, out = examine(monkeypatch, capsys, raising("aten::embedding", RuntimeError("MPS backend out of memory")))
    assert not ok and "内存不够" in out and "速度　内存不够" in out and "Traceback" not in out


def test_wrong_device_is_never_recommended():
    def machine(name, device):
        return types.SimpleNamespace(name=name, precision=name.split()[1], device=device)

    good, bad = {"ok": True, "errors": (0.0, 0.0, 0.0)}, {"ok": False, "errors": (0.0, 0.5, 0.0)}
    machines = [machine("cpu fp32", "cpu"), machine("mps fp32", "mps"), machine("mps bf16", "mps")]
    speeds = {"cpu fp32": (10.0, 1.0), "mps fp32": (5.0, 9.0), "mps bf16": (6.0, 12.0)}
    results = {each.name: {("ch05", "损失"): good} for each in machines}
    assert "用 mps bf16" in doctor.recommend(machines, results, speeds)[1]
    results["mps fp32"] = {("ch05", "损失"): bad}
    lines = doctor.recommend(machines, results, speeds)
    assert "用 cpu fp32" in lines[0] and "mps fp32 5" in lines[0]  # 前向没错，生成可以比
    assert "用 cpu fp32" in lines[1] and "mps" not in lines[1]  # 反向错了，再快也不用来训练；bf16 容差宽，看不出来，也不用


@pytest.mark.parametrize(("number", "found"), [("2.8.0", "19.88"), ("2.13.0+cpu", "192577"), ("2.2.2", "叹号"), ("2.10.1", None)])
def test_known_bad_versions(monkeypatch, number, found):
    monkeypatch.setattr(torch, "__version__", number)
    notes = doctor.known_bad(torch.device("mps"))
    assert (found in notes[0]) if found else notes == []
    assert doctor.known_bad(CPU) == []


def test_command_line(tmp_path):
    """真的运行一次，从别的文件夹；30 秒以内。"""
    result = subprocess.run([sys.executable, str(ROOT / "setup" / "device_check.py"), "--doctor", "--device", "cpu"], cwd=tmp_path, capture_output=True, encoding="utf-8", env=None, timeout=300)
    assert (result.returncode, result.stderr) == (0, "")
    seconds = int(re.search(r"用时 (\d+) 秒", result.stdout).group(1))
    assert seconds < 90  # 定的是 30 秒；测试时机器常常很忙


def test_contexts_are_entered():
    """参照和真的设备不动手脚，bf16 真的开了自动混合精度。"""
    assert isinstance(doctor.Machine(CPU).computing(), contextlib.nullcontext)
    with doctor.Machine(CPU, "bf16").autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
