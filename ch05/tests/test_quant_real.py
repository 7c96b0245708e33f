"""exp_real_llm_speed、exp_quantization：量化与 torch、gguf 自己的相同；梯子的各级算的是同一个模型；写错一处，自查里就有 ✗。

运行：python -m pytest ch05/tests/test_quant_real.py
模型是当场造的极小的一个；要真的权重的几个，没有转换好就跳过（python ch05/experiments/exp_real_llm.py --convert）。
"""

import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[1] / "experiments"
TINY = {"vocab_size": 320, "context_length": 64, "emb_dim": 64, "n_heads": 4, "n_kv_groups": 2, "n_layers": 2, "hidden_dim": 96}
TINY |= {"rope_base": 10_000.0, "norm_eps": 1e-2, "rope_freq": None}


def load(name, path=None):
    spec = importlib.util.spec_from_file_location(name, path or FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def speed():
    return load("exp_real_llm_speed")


@pytest.fixture(scope="module")
def quant():
    return load("exp_quantization")


@pytest.fixture(scope="module")
def real(quant):
    if not quant.SMOLLM2.is_file():
        pytest.skip("没有 SmolLM2 的权重：python ch05/experiments/exp_real_llm.py --convert")
    return quant.load_smollm2()


def tiny(module, **changes):
    """一个极小的 Llama；归一化的缩放各不相同，装反了才看得出来；输出层就是词嵌入。"""
    torch.manual_seed(1)
    model = module.LlamaModel(TINY | changes).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.uniform_(parameter, 0.5, 1.5) if "norm" in name else torch.nn.init.normal_(parameter, std=0.2)
    model.out_head.weight = model.tok_emb.weight
    return model


def q4_1(model):
    """各层的矩阵都由 gguf 变成 Q4_1 再还原，像 SmolLM2 的文件那样。"""
    from gguf import GGMLQuantizationType as Kind
    from gguf.quants import dequantize, quantize

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "tok_emb" not in name:
                weight.copy_(torch.from_numpy(dequantize(quantize(weight.numpy(), Kind.Q4_1), Kind.Q4_1)))
    return model


def command(module, monkeypatch, *args):
    """像在命令行里那样运行，线程数用完改回来。"""
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, args)])
    try:
        module.main()
    finally:
        torch.set_num_threads(threads)


def broken(name, tmp_path, old, new):
    """改坏一处的脚本；开头的「动手改」里也有这几句，不算。"""
    _, _, source = (FOLDER / f"{name}.py").read_text(encoding="utf-8").split('"""', 2)
    assert source.count(old) == 1, old
    path = tmp_path / f"{name}.py"
    path.write_text(source.replace(old, new), encoding="utf-8")
    return load("broken", path)


# ── 量化 ──


@pytest.mark.filterwarnings("ignore")  # quantize_per_channel 将来要搬走
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_quantize_like_torch(quant, bits):
    """一行一组、对称：与 torch 的 fake_quantize_per_channel_affine 相同；8 位的整数与 quantize_per_channel 的相同。"""
    weight = torch.randn(40, 96, generator=torch.Generator().manual_seed(1)) * 0.05
    q, scale, low = quant.quantize_rows(weight, bits)
    steps, top = weight.abs().amax(dim=1) / (2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1
    theirs = torch.fake_quantize_per_channel_affine(weight, steps, torch.zeros(40, dtype=torch.int32), 0, -top, top)
    assert torch.equal(q[:, 0].float(), (theirs / steps[:, None]).round()) and q.abs().max() == top
    assert torch.equal(scale[:, 0, 0], steps.half()) and not low.any()
    if bits == 8 and hasattr(torch, "quantize_per_channel"):
        packed = torch.quantize_per_channel(weight, steps.double(), torch.zeros(40, dtype=torch.int64), 0, torch.qint8)
        assert torch.equal(q[:, 0], packed.int_repr().to(q.dtype))


@pytest.mark.parametrize("kind, bits, zero_point", [("Q4_1", 4, True), ("Q8_0", 8, False)])
def test_quantize_like_gguf(quant, kind, bits, zero_point):
    """32 个一组：与 gguf 的 Q4_1、Q8_0 还原出的逐位相同，占的字节也相同；有全是 0 的一组，有全相同的一组。"""
    from gguf import GGMLQuantizationType as Kind
    from gguf.quants import dequantize, quantize

    weight = torch.randn(50, 96, generator=torch.Generator().manual_seed(2)) * 0.05
    weight[0, :32], weight[1, 32:64], weight[2, 5] = 0, 0.25, 3.0
    data = quantize(weight.numpy(), Kind[kind])
    ours, size = quant.shrink(weight, (bits, 32, zero_point))
    if kind == "Q8_0":  # 它的全相同的一组也是 127 步，与我们的一样
        assert torch.equal(ours[1, 32:64], torch.from_numpy(dequantize(data, Kind[kind]))[1, 32:64])
    assert torch.equal(ours, torch.from_numpy(dequantize(data, Kind[kind]))) and size == data.nbytes
    assert torch.equal(quant.shrink(ours, (bits, 32, zero_point))[0], ours)  # 再量化一次，不变


def test_groups(quant):
    """每组各有步长：一个大权重只伤自己那一组；最后一组可以短；整个矩阵一组就是只有一个步长。"""
    weight = torch.randn(6, 80, generator=torch.Generator().manual_seed(3))
    weight[0, 3] = 100
    q, scale, _ = quant.quantize_rows(weight, 4, 32)
    assert q.shape == (6, 3, 32) and scale.shape == (6, 3, 1)
    new = quant.dequantize_rows(q, scale, torch.zeros_like(scale), 80)
    assert new.shape == weight.shape and (new[0, :32] == 0).sum() == 31 and (new - weight)[0, 32:].abs().max() < 0.5
    whole, size = quant.shrink(weight, (4, "张量", False))
    assert len(whole.unique()) <= 15 and size == 6 * 80 / 2 + 2
    assert quant.shrink(weight, (4, "行", True))[1] == 6 * 80 / 2 + 6 * 4
    assert torch.equal(quant.dequantize_rows(*quant.quantize_rows(weight, 8, 1, True), 80), weight.half().float())  # 一个一组：最小值就是它自己
    positive = weight.abs() + 5
    errors = [(quant.shrink(positive, (4, 32, zero))[0] - positive).norm() for zero in (False, True)]
    assert errors[1] < 0.7 * errors[0]  # 全是正数，对称的一半格子白费


@pytest.mark.parametrize("bits, size", [(1, 32), (9, 32), (4, 0), (4, -1)])
def test_quantize_refuses(quant, bits, size):
    with pytest.raises(ValueError, match=rf"{bits} 位、{size} 个"):
        quant.quantize_rows(torch.ones(2, 4), bits, size)


def test_rewrite_only_a_part(quant):
    """只动那一部分，其余的与原来逐位相同；大小：量化了的按新的算，没有量化的按文件里的算。"""
    original, model = tiny(quant), tiny(quant)
    size, error = quant.rewrite(model, original, (4, "行", False), ".att.")
    changed = {name for (name, new), old in zip(model.named_parameters(), original.parameters()) if not torch.equal(new, old)}
    assert changed == {name for name, p in original.named_parameters() if ".att." in name} and 0.05 < error < 0.3
    count = {part: sum(p.numel() for name, p in original.named_parameters() if part in name and p.dim() == 2) for part in (".att.", ".ff.", "tok_emb")}
    rows = sum(len(p) for name, p in original.named_parameters() if ".att." in name)
    norms = sum(p.nbytes for p in original.parameters() if p.dim() == 1)
    assert size == count[".att."] / 2 + 2 * rows + count[".ff."] / 32 * 20 + count["tok_emb"] / 32 * 34 + norms
    assert quant.rewrite(model, original, None)[1] == 0 and all(torch.equal(a, b) for a, b in zip(model.parameters(), original.parameters()))


def test_compare_and_exam(quant):
    """KL 与按定义算的相同，自己和自己是 0；配对：说不清的就说分不出。"""
    model, windows = tiny(quant), torch.randint(320, (2, 20), generator=torch.Generator().manual_seed(4))
    base = quant.predict(model, windows)
    other = quant.predict(tiny(quant, norm_eps=1.0), windows)
    row = quant.compare_with(base, other)
    p, q = base[1].double(), other[1].double()
    assert row["KL"] == pytest.approx((p.exp() * (p - q)).sum(dim=-1).mean().item(), rel=1e-3) and row["KL"] > 0.01
    assert row["困惑度"] == pytest.approx(torch.nn.functional.cross_entropy(other[1], windows[:, 1:].flatten()).exp().item(), rel=1e-4)
    same = quant.compare_with(base, base)
    assert same["KL"] == 0 and same["首选"] == 1 and same["差"] == same["区间"] == 0
    right, wrong = [("?", "a", True)] * 6, [("?", "b", False)] * 6
    assert "分不出" in quant.paired(right[:5] + right[:1], wrong[:5] + right[:1]) and "对变错 6，错变对 0，分得出" in quant.paired(right, wrong)
    assert "一字不差的 6 道" in quant.paired(right, right) and "分不出" in quant.paired(right, right)


def test_real_weights_are_q4_1(quant, real):
    """真的权重：各层再照 Q4_1 量化一次，逐位相同；词嵌入再照 Q8_0 量化一次，也相同；对称的 4 位就不同了。"""
    weights = dict(real[0].named_parameters())
    for name in ("trf_blocks.0.att.W_query.weight", "trf_blocks.17.ff.fc3.weight", "trf_blocks.29.ff.fc1.weight"):
        assert torch.equal(quant.shrink(weights[name].detach(), (4, 32, True))[0], weights[name])
        assert not torch.equal(quant.shrink(weights[name].detach(), (4, 32, False))[0], weights[name])
    piece = weights["tok_emb.weight"][:2000].detach()
    assert torch.equal(quant.shrink(piece, (8, 32, False))[0], piece)


def test_outliers(quant):
    """找得到故意放进去的那个权重；激活值的误差、权重的误差都是小数。"""
    model = tiny(quant)
    with torch.no_grad():
        model.trf_blocks[1].ff.fc3.weight[7, 3] = 50
    ratio, name, row, weights = quant.widest_row(model)
    assert name == "trf_blocks.1.ff.fc3.weight" and row == 7 and weights[3] == 50 and 8 < ratio < 96**0.5
    found = quant.activation_outliers(model, torch.randint(320, (1, 12)))
    assert len(found) == 14 and all(0 < each < 0.1 for row in found for each in row[1:3])
    assert not any(module._forward_pre_hooks for module in model.modules())


# ── 快慢 ──


def gaps(speed, model):
    """各级一个个送进去的 logits，与模型一次算出的差多少。"""
    ids = torch.randint(model.cfg["vocab_size"], (1, 10), generator=torch.Generator().manual_seed(5))
    rungs, result = speed.ladder(model, 16), {}
    with torch.inference_mode():
        exact = model(ids)[:, 3:]
        for name, each in rungs.items():
            each.start(ids[:, :4])
            each.cache.length = 3  # 退回去一个再送
            result[name] = ((torch.cat([each.forward(ids[:, i : i + 1]) for i in range(3, 10)], dim=1) - exact).abs().max() / exact.std()).item()
    return rungs, result


def test_rungs_are_the_same_model(speed):
    """fp32 的每一级 ≤ 1e-3；16 位、8 位、4 位差得多些（权重本来就在 4 位的格子上），但还是同一个模型；读的字节数依次变少。"""
    rungs, found = gaps(speed, q4_1(tiny(speed)))
    assert len(rungs) >= 4 and all(found[name] < 1e-3 for name in found if name in (speed.PLAIN, *speed.SWITCHES, "＋权重重排"))
    short = [found[name] for name in ("＋bf16 权重", "＋int8 权重", "＋int4 权重") if name in found]
    assert all(1e-4 < gap < 0.5 for gap in short), found
    sizes = [rungs[name].nbytes for name in rungs]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 4 * sum(p.numel() for p in rungs[speed.PLAIN].model.parameters() if p.dim() == 2)


def test_rungs_on_real_weights(speed, real):
    """SmolLM2 的前两层：fp32 的各级 ≤ 1e-3；4 位那一级的各层就是文件里的格子，只差步长取了 bf16。"""
    model = speed.LlamaModel.__new__(speed.LlamaModel)
    torch.nn.Module.__init__(model)
    model.cfg = real[0].cfg | {"n_layers": 2}
    model.tok_emb, model.out_head, model.final_norm = real[0].tok_emb, real[0].out_head, real[0].final_norm
    model.trf_blocks, model.cos, model.sin = real[0].trf_blocks[:2], real[0].cos, real[0].sin
    rungs, found = gaps(speed, model)
    assert all(found[name] < 1e-3 for name in (speed.PLAIN, *speed.SWITCHES)) and all(gap < 0.2 for gap in found.values()), found


def test_transformers_is_the_same_model(speed):
    pytest.importorskip("transformers")
    model, ids = tiny(speed), torch.randint(320, (1, 9), generator=torch.Generator().manual_seed(6))
    theirs, ours = speed.Transformers(model, torch.float32), speed.Writer(model, 32)
    for each in (theirs, ours):
        each.start(ids)
        for _ in range(12):
            each.step()
    assert theirs.written == ours.written and len(set(ours.written)) > 3 and theirs.nbytes == ours.nbytes
    with torch.inference_mode():
        theirs.start(ids[:, :5])
        assert torch.allclose(theirs.forward(ids[:, 5:6]), model(ids[:, :6])[:, -1:], atol=1e-4)


def test_peers_only_where_installed(speed, monkeypatch, tmp_path, capsys):
    """没有装的，说没有量；装了 llama.cpp，就用它的 generate，与别的一样写。"""
    monkeypatch.setattr(speed, "find_spec", lambda name: None)
    assert speed.peers(None, 8) == {} and capsys.readouterr().out.count("没有量它") == 2
    asked = {}

    class Llama:
        def __init__(self, **named):
            asked.update(named)

        def generate(self, tokens, temp, repeat_penalty):
            asked.update(tokens=tokens, temp=temp)
            yield from range(100)

    (tmp_path / speed.GGUF_NAME).write_bytes(b"x" * 7)
    monkeypatch.setitem(sys.modules, "llama_cpp", types.SimpleNamespace(Llama=Llama))
    package = types.SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(speed, "find_spec", lambda name: None if name == "transformers" else package)
    each = speed.peers(None, 8)["llama.cpp，文件里的 Q4_1"]
    each.start(torch.tensor([[5, 6]]))
    for _ in range(3):
        each.step()
    assert each.written == [0, 1, 2, 3] and each.nbytes == 7 and asked["tokens"] == [5, 6] and asked["temp"] == 0
    assert asked["model_path"].endswith(speed.GGUF_NAME)


def test_missing_kernels_are_skipped(speed, monkeypatch, capsys):
    """没有的内核跳过，后面的各级照样搭。"""

    def refuse(*_):
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(speed.LINEARS, "＋权重重排", ((refuse, refuse), torch.float32))
    rungs = speed.ladder(tiny(speed), 8)
    assert "＋权重重排" not in rungs and "跳过「＋权重重排」" in capsys.readouterr().out and list(speed.SWITCHES)[-1] in rungs


def test_first_difference(speed):
    assert speed.first_difference([1, 2, 3], [1, 2, 3]) is None and speed.first_difference([1, 2, 3], [1, 5, 3]) == 2


# ── 从头到尾 ──


@pytest.mark.parametrize("name", ["exp_real_llm_speed", "exp_quantization"])
def test_runs(name, request, real, monkeypatch, tmp_path, capsys):
    """从头到尾走一遍，模型换成极小的：没有 ✗，图画出来了，不下结论。"""
    module = request.getfixturevalue({"exp_real_llm_speed": "speed", "exp_quantization": "quant"}[name])
    monkeypatch.setattr(module, "load_smollm2", lambda: (q4_1(tiny(module, vocab_size=49_152, context_length=256, hidden_dim=160)), real[1]))
    monkeypatch.setattr(module, "OUTPUTS", tmp_path)
    monkeypatch.setattr(module, "find_spec", lambda _: None, raising=False)
    command(module, monkeypatch, "--quick")
    out = capsys.readouterr().out
    assert "✗" not in out and out.count("✓") >= 2 and "更快" not in out and len(list(tmp_path.glob("*.png"))) == 1


def test_exam_is_paired(quant, real, monkeypatch, capsys):
    """考试：答案变了、对错也变了的，两次的答案都印出来。"""
    answers = iter(["It is Paris.", "Jupiter", "It is Rome.", "Jupiter"])
    monkeypatch.setattr(quant, "answer", lambda *_: (next(answers), 0.5, []))
    monkeypatch.setattr(quant, "QUESTIONS", {"常识": quant.QUESTIONS["常识"][:2]})
    first, second = quant.sit_exam(None, None, 2, "一"), quant.sit_exam(None, None, 2, "二")
    assert [row[2] for row in first] == [True, True] and [row[2] for row in second] == [False, True]
    assert quant.paired(first, second) == "答对 1 / 2；对变错 1，错变对 0，分不出；一字不差的 1 道"


@pytest.mark.parametrize("name, args", [("exp_real_llm_speed", ["--threads", "0"]), ("exp_quantization", ["--questions", "6"])])
def test_bad_arguments(name, args, request, monkeypatch, capsys):
    module = request.getfixturevalue({"exp_real_llm_speed": "speed", "exp_quantization": "quant"}[name])
    with pytest.raises(SystemExit) as stopped:
        command(module, monkeypatch, *args)
    assert stopped.value.code == 2 and args[0] in capsys.readouterr().err.splitlines()[-1]


def test_without_the_weights(tmp_path):
    """没有转换好的权重：一句话，退出码 2。"""
    copy = tmp_path / "ch05" / "experiments" / "exp_real_llm_speed.py"
    copy.parent.mkdir(parents=True)
    copy.write_text((FOLDER / copy.name).read_text(encoding="utf-8"), encoding="utf-8")
    result = subprocess.run([sys.executable, copy, "--quick"], capture_output=True, encoding="utf-8", env=os.environ | {"PYTHONUTF8": "1"})
    assert result.returncode == 2 and "exp_real_llm.py --convert" in result.stderr.splitlines()[-1] and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "name, old, new",
    [
        ("exp_real_llm_speed", "(att.W_query, att.W_key, att.W_value)", "(att.W_key, att.W_query, att.W_value)"),
        ("exp_real_llm_speed", "[ff.fc1.weight.detach(), ff.fc2.weight.detach()]", "[ff.fc2.weight.detach(), ff.fc1.weight.detach()]"),
        ("exp_real_llm_speed", "queries_keys.roll(", "queries_keys.neg().roll("),
        ("exp_real_llm_speed", "[start : start + t], self.signed[start : start + t]", "[:t], self.signed[:t]"),
        ("exp_real_llm_speed", "layer.scale, layer.eps)", "layer.scale, 1e-6)"),
        ("exp_quantization", "(groups - low).div_(", "groups.div("),
        ("exp_quantization", ".round_().to(torch.int16)", ".floor().to(torch.int16)"),
        ("exp_quantization", "(4 if zero_point else 2)", "2"),
        ("exp_quantization", "unflatten(1, (-1, size))", "unflatten(1, (1, -1))"),
    ],
)
def test_broken_scripts_are_caught(tmp_path, capsys, name, old, new):
    module = broken(name, tmp_path, old, new)
    model = q4_1(tiny(module, hidden_dim=288))
    if name == "exp_quantization":
        try:
            module.check(model)
        except RuntimeError:  # 形状对不上，也算抓到了
            return
    else:
        module.check(model, module.ladder(model, 16), {}, torch.randint(320, (1, 12), generator=torch.Generator().manual_seed(7)))
    assert "✗" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["exp_real_llm_speed", "exp_quantization"])
def test_unbroken_scripts_are_not(tmp_path, capsys, name):
    """没有改坏的，同样的小模型没有 ✗：上面抓到的才是那一处。"""
    test = broken(name, tmp_path, "import argparse", "import argparse ")
    model = q4_1(tiny(test, hidden_dim=288))
    if name == "exp_quantization":
        test.check(model)
    else:
        test.check(model, test.ladder(model, 16), {}, torch.randint(320, (1, 12), generator=torch.Generator().manual_seed(7)))
    assert "✗" not in capsys.readouterr().out
