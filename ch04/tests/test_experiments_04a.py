"""第 4 章实验的测试（一）：KV 缓存、NumPy 版 GPT、解码梯子、运算与参数、规模、权重共用。

参照是别人写的：llms_from_scratch 的 GPTModel、transformers 的 GPT-2；用小配置，在本进程里跑。
运行：python -m pytest ch04/tests/test_experiments_04a.py
"""

import functools
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

pytestmark = pytest.mark.filterwarnings("error:Glyph")  # 字体里没有的字会画成方框，matplotlib 这时警告一声
FOLDER = Path(__file__).resolve().parent.parent / "experiments"
SCRIPTS = ["exp_kv_cache", "exp_numpy_gpt", "exp_fast_decode", "exp_fast_decode_lowbit", "exp_flops_and_params", "exp_model_scales", "exp_weight_tying"]
TINY = {"vocab_size": 97, "context_length": 24, "emb_dim": 32, "n_heads": 4, "n_layers": 2, "drop_rate": 0.0, "qkv_bias": True}


@functools.cache
def load(name):
    """按路径导入一个实验。"""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """call(实验, 参数…) → 退出码、stdout、stderr；图片写到临时文件夹。"""

    def run(name, *args):
        module = load(name)
        monkeypatch.setattr(module, "OUTPUTS", tmp_path / "outputs")
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, args)])
        code = 0
        try:
            if name == "exp_numpy_gpt":
                module.main(module.numpy_part())
            else:
                module.main()
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def book():
    """原书作者的 GPTModel 和生成函数。"""
    return pytest.importorskip("llms_from_scratch.ch04", reason="没有装 llms-from-scratch，无法与它比较")


def check_output(result, pictures):
    """退出码 0，没有 ✗，有自查和结论，图片写出来了。"""
    code, out, err = result
    assert code == 0, err
    assert "✗" not in out and "✓" in out and "这个数字对吗？" in out and "所以（都是这一次" in out
    assert (pictures / "outputs").is_dir() and list((pictures / "outputs").glob("*.png"))


def test_every_experiment_is_listed():
    readme = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    assert all(f"experiments/{name}.py" in readme for name in SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_is_chinese(call, name):
    code, out, _ = call(name, "--help")
    assert code == 0 and "实验　" in out and "--quick" in out


@pytest.mark.parametrize(
    ("name", "args", "says"),
    [
        ("exp_kv_cache", ["--context-length", "63"], "--context-length 应在 64 到"),
        ("exp_kv_cache", ["--context-length", "9999"], "--context-length 应在 64 到"),
        ("exp_kv_cache", ["--context-length", "半"], "invalid int value"),
        ("exp_numpy_gpt", ["--max-new-tokens", "-3"], "至少是 4"),
        ("exp_numpy_gpt", ["--weights", "没有.safetensors"], "找不到权重文件"),
        ("exp_numpy_gpt", ["--quick", "--prompt", ""], "提示词"),
        ("exp_fast_decode", ["--prompt-tokens", "600"], "--prompt-tokens 应在 2 到 512"),
        ("exp_fast_decode", ["--threads", "0"], "--threads 应在"),
        ("exp_fast_decode_lowbit", ["--new-tokens", "-1"], "--new-tokens 应在"),
        ("exp_fast_decode_lowbit", ["--pretrained"], "ch05/main/gpt_download.py"),
        ("exp_flops_and_params", ["--tokens", "0"], "--tokens 应在 1 到"),
        ("exp_flops_and_params", ["--batch", "-2"], "--batch 应在 1 到"),
        ("exp_model_scales", ["--tokens", "4096"], "--tokens 应在 1 到 1024"),
        ("exp_model_scales", ["--device", "tpu"], "没有设备 tpu"),
        ("exp_weight_tying", ["--emb-dim", "100"], "32（每个头的维度）整除"),
        ("exp_weight_tying", ["--text", "没有.txt"], "读不了"),
        ("exp_weight_tying", ["--nosuch"], "unrecognized arguments"),
    ],
)
def test_bad_input(call, name, args, says, monkeypatch):
    if name == "exp_fast_decode_lowbit":  # 这台电脑上有没有真的权重，都当作没有
        is_file = Path.is_file
        monkeypatch.setattr(Path, "is_file", lambda path: not path.name.startswith("gpt2-") and is_file(path))
    code, _, err = call(name, *args)
    assert code == 2 and "Traceback" not in err and says in err.splitlines()[-1]


# ---- exp_kv_cache ----


@pytest.fixture(scope="module")
def pair(book):
    """同样权重的两个模型：实验里的，和原书作者的。"""
    torch.manual_seed(5)
    ours = load("exp_kv_cache").GPTModel(TINY).eval()
    theirs = book.GPTModel(TINY).eval()
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert all(name.endswith("mask") for name in missing) and not unexpected
    return ours, theirs, torch.randint(97, (1, 7))


def tokens_of(module, *args, **options):
    return [token for token, _ in module.generate_stream(*args, **options)]


@pytest.mark.parametrize("kind", ["ConcatCache", "PreallocatedCache"])
@pytest.mark.parametrize("chunk", [None, 1, 5])
def test_cached_equals_the_book_past_the_context(book, pair, kind, chunk):
    """上下文 24，提示词 7，生成 40 个：满了以后又走了 22 步，仍与原书作者的 generate_text_simple 逐个相同；缓存可以反复用。"""
    module, (ours, theirs, idx) = load("exp_kv_cache"), pair
    expected = book.generate_text_simple(theirs, idx, 40, TINY["context_length"])[0, 7:].tolist()
    caches = [getattr(module, kind)(*([24] if kind == "PreallocatedCache" else [])) for _ in range(2)]
    for _ in range(2):
        assert tokens_of(module, ours, idx, 40, 24, caches, chunk=chunk) == expected
    long_prompt = torch.randint(97, (1, 60), generator=torch.Generator().manual_seed(2))  # 提示词比上下文还长
    expected = book.generate_text_simple(theirs, long_prompt, 5, 24)[0, 60:].tolist()
    assert tokens_of(module, ours, long_prompt, 5, 24, caches, chunk=chunk) == expected


def test_rewinding_is_prefix_reuse(pair):
    """退回到第 n 个词元，换个问题再问：logits 与从头算的相同；内存还是原来那块。"""
    module, (ours, theirs, _) = load("exp_kv_cache"), pair
    ids = torch.randint(97, (2, 24), generator=torch.Generator().manual_seed(3))
    ids[1, :10] = ids[0, :10]  # 前 10 个相同
    caches = [module.PreallocatedCache(24) for _ in range(2)]
    with torch.no_grad():
        first = ours(ids[:1], caches)
        place = caches[0].keys.data_ptr()
        for cache in caches:
            cache.length = 10
        second = ours(ids[1:, 10:], caches)
        assert (first - theirs(ids[:1])).abs().max() < 1e-4 and (second - theirs(ids[1:])[:, 10:]).abs().max() < 1e-4
    assert caches[0].keys.data_ptr() == place and caches[0].keys.shape[2] == 24


def test_visible():
    """前面有 s − t 个旧的：每个新词元看得见旧的全部、自己和自己前面的。"""
    visible = load("exp_kv_cache").visible
    assert visible(2, 4, "cpu").tolist() == [[True, True, True, False], [True, True, True, True]]
    assert torch.equal(visible(5, 5, "cpu"), torch.ones(5, 5).tril().bool())


def test_compare_tells_noise_from_difference():
    """同一种分布的两串用时，分不出；真的快一倍，看得清；只差 1% 的，再稳也不算。"""
    compare, generator = load("exp_kv_cache").compare, torch.Generator().manual_seed(6)
    noisy = [(1 + 0.3 * torch.rand(40, generator=generator)).tolist() for _ in range(41)]
    assert sum(compare(noisy[0], other)[1] != "分不出" for other in noisy[1:]) <= 1
    assert compare([2.0, 2.2, 1.9, 2.1], [1.0, 1.1, 1.0, 1.05])[1] == "更快" and compare([1.0] * 8, [2.0] * 8) == (0.5, "更慢")
    assert compare([1.01] * 8, [1.0] * 8)[1] == "分不出"


def test_forgetting_the_offset_is_noticed(pair, monkeypatch):
    """「动手改」第 2 条：位置不接着数，生成的就不同。"""
    module, (ours, _, idx) = load("exp_kv_cache"), pair
    expected = tokens_of(module, ours, idx, 15, 24)
    caches = [module.ConcatCache() for _ in range(2)]
    monkeypatch.setattr(type(caches[0]), "length", property(lambda self: 0, lambda self, value: None), raising=False)
    with torch.no_grad():
        logits = [ours(idx, caches)[:, -1], *[ours(torch.tensor([[token]]), caches)[:, -1] for token in expected[:5]]]
    assert [each.argmax().item() for each in logits] != expected[:6]


def test_kv_cache_script(call, tmp_path, monkeypatch):
    monkeypatch.setattr(load("exp_kv_cache"), "SIZES", {"emb_dim": 32, "n_heads": 2, "n_layers": 2})
    result = call("exp_kv_cache", "--context-length", 64)
    check_output(result, tmp_path)
    assert result[1].count("逐个相同") == 5 and result[1].count("过了上下文长度也相同") == 4
    assert f"{2 * 2 * 64 * 32 * 4 / 2**20:.1f} MB；GPT-2 small 写满 1024 个是 72 MB" in result[1]
    assert re.search("更快|更慢|分不出", result[1]) and not re.search("更快|更慢|分不出", call("exp_kv_cache", "--quick")[1])


# ---- exp_numpy_gpt ----


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """transformers 的小 GPT-2，和它存下的文件。"""
    transformers = pytest.importorskip("transformers", reason="没有装 transformers，无法与它比较")
    torch.manual_seed(3)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=128, n_layer=2, n_head=2, n_positions=64)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)  # 偏置也不是 0，缩放也不是 1，漏了哪个都看得出来
    path = tmp_path_factory.mktemp("gpt2") / "gpt2.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.transformer.state_dict().items()}, path)
    return model, path


def test_numpy_equals_transformers(gpt2):
    """整句送、一个个送、先送一段再一个个送，logits 都与 transformers 相同。"""
    module, (model, path) = load("exp_numpy_gpt"), gpt2
    weights = module.open_safetensors(path)
    assert module.check_weights(weights) == (128, 2)
    ids = torch.randint(50257, (20,), generator=torch.Generator().manual_seed(4)).tolist()
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    for pieces in ([20], [1] * 20, [13, 1, 1, 5]):
        gpt, got, rest = module.NumpyGPT(weights, 128, 2), [], ids
        for length in pieces:
            got.append(gpt.forward(rest[:length]))
            rest = rest[length:]
        got = np.concatenate(got)
        assert got.dtype == np.float32 and np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()
    with pytest.raises(ValueError, match="超过了模型的上下文长度 64"):
        gpt.forward([1] * 45)


def test_memory_map_copies_nothing(gpt2):
    weights = load("exp_numpy_gpt").open_safetensors(gpt2[1])
    for array in weights.values():
        while array.base is not None and not isinstance(array, np.memmap):
            array = array.base
        assert isinstance(array, np.memmap)


def test_numpy_script(call, gpt2, tmp_path):
    result = call("exp_numpy_gpt", "--weights", gpt2[1], "--max-new-tokens", 6)
    code, out, err = result
    assert code == 0, err
    # 在测试里 torch 早已导入，所以「还没有导入」那一条必然不成立；其余都要成立。
    assert out.count("✗") == 1 and "✗ 第一个词元出来时" in out and out.count("✓") == 3


def test_first_token_without_torch(tmp_path):
    """真的不许导入 torch：第一个词元照样出来；PyTorch 导入失败是在那之后。"""
    code = f"import sys, runpy; sys.modules['torch'] = None; sys.argv = ['x', '--quick', '--max-new-tokens', '4']; runpy.run_path({str(FOLDER / 'exp_numpy_gpt.py')!r}, run_name='__main__')"
    env = os.environ | {"PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, encoding="utf-8", timeout=120)
    assert "第一个词元" in done.stdout and "Every effort moves you" in done.stdout
    assert done.returncode == 1 and "torch" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("size", [0, 5, 100, 20_000, -4])
def test_cut_short_weights(call, gpt2, tmp_path, size):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(gpt2[1].read_bytes()[:size])
    code, _, err = call("exp_numpy_gpt", "--weights", path)
    assert code == 2 and "Traceback" not in err and re.search("读不出来|不完整", err.splitlines()[-1])


def test_wrong_weights(call, gpt2, tmp_path):
    _, path = gpt2
    weights = {name: torch.from_numpy(np.array(array)) for name, array in load("exp_numpy_gpt").open_safetensors(path).items()}
    for change, says in [({"h.1.ln_2.bias": None}, "h.1.ln_2.bias 没有"), ({"wte.weight": torch.zeros(50257, 100)}, "不能被每个头的维度 64 整除"), ({"ln_f.bias": torch.zeros(127)}, "形状是")]:
        save_file({name: tensor for name, tensor in (weights | change).items() if tensor is not None}, tmp_path / "wrong.safetensors")
        code, _, err = call("exp_numpy_gpt", "--weights", tmp_path / "wrong.safetensors")
        assert code == 2 and says in err


# ---- exp_fast_decode、exp_fast_decode_lowbit ----


@pytest.fixture(scope="module")
def decoding(book):
    """实验里的模型和原书作者的，同样的权重；一串词元。"""
    module = load("exp_fast_decode")
    torch.manual_seed(8)
    model, theirs = module.GPTModel(TINY).eval(), book.GPTModel(TINY).eval()
    theirs.load_state_dict(model.state_dict())
    return module, model, theirs, torch.randint(97, (3, 5))


@pytest.mark.parametrize("count", range(6))
def test_decoder_equals_the_book(book, decoding, count):
    """梯子的每一级：生成的与原书的逐个相同，批里每一句都对，缓存可以反复用；开关一个一个多开。"""
    module, model, theirs, ids = decoding
    expected = book.generate_text_simple(theirs, ids, 15, 24)[:, 5:]
    decoder = module.Decoder(model, module.fuse_qkv(model), set(list(module.SWITCHES)[:count]), 24)
    for _ in range(2):
        decoder.start(ids)
        found = [decoder.next]
        for _ in range(14):
            decoder.step()
            found.append(decoder.next)
        assert torch.equal(torch.cat(found, dim=1), expected)


def test_each_switch_changes_one_thing(decoding, monkeypatch):
    """开了哪个开关，就只换掉哪一样：数一数各种调用。"""
    module, model, _, ids = decoding
    fused = module.fuse_qkv(model)
    calls = {}

    def counted(name, function):
        return lambda *args, **named: (calls.__setitem__(name, calls.get(name, 0) + 1), function(*args, **named))[1]

    monkeypatch.setattr(module.F, "scaled_dot_product_attention", counted("sdpa", module.F.scaled_dot_product_attention))
    monkeypatch.setattr(module.F, "gelu", counted("kernels", module.F.gelu))
    hooks = [each.register_forward_hook(lambda *_: calls.__setitem__("qkv", calls.get("qkv", 0) + 1)) for each in fused]
    shapes = {}
    for count in range(len(module.SWITCHES) + 1):
        calls.clear()
        names = list(module.SWITCHES)[:count]
        decoder = module.Decoder(model, fused, set(names), 24)
        shapes[count] = decoder.forward(ids).shape[1]
        assert set(calls) == set(names) & {"sdpa", "kernels", "qkv"}
        assert isinstance(decoder.caches[0], module.PreallocatedCache) == ("preallocated" in names)
    for hook in hooks:
        hook.remove()
    assert shapes == {0: 5, 1: 1, 2: 1, 3: 1, 4: 1, 5: 1}


def test_identical_rungs_are_not_told_apart(decoding):
    """A/A：九个一模一样的解码器轮流走，八次比较，至多一次说「更快」「更慢」。"""
    module, model, _, ids = decoding
    fused, threads = module.fuse_qkv(model), torch.get_num_threads()
    decoders = {i: module.Decoder(model, fused, set(module.SWITCHES), 24) for i in range(9)}
    torch.set_num_threads(1)
    try:
        for decoder in decoders.values():
            decoder.start(ids[:1])
        seconds = module.in_turn({i: decoder.step for i, decoder in decoders.items()}, 19)
    finally:
        torch.set_num_threads(threads)
    assert sum(module.compare(seconds[0][2:], seconds[i][2:])[1] != "分不出" for i in range(1, 9)) <= 1


def test_fast_decode_script(call, tmp_path, monkeypatch):
    module = load("exp_fast_decode")
    monkeypatch.setattr(module, "QUICK_CONFIG", module.QUICK_CONFIG | {"emb_dim": 64, "n_heads": 2, "n_layers": 2})
    monkeypatch.setattr(module, "GPT_CONFIG_124M", module.QUICK_CONFIG)
    result = call("exp_fast_decode", "--quick")
    check_output(result, tmp_path)
    assert len(re.findall(r"）.*% +\d+　　 *[\d.]+ 倍", result[1])) == 8 and not re.search("更快|更慢|分不出", result[1])
    out = call("exp_fast_decode", "--prompt-tokens", 16, "--new-tokens", 8)[1]
    assert len(re.findall(r"倍，(更快|更慢|分不出)", out)) >= 8 and "批大小 16 再乘" in out


LINEARS = [("PlainLinear", torch.float32, 0), ("PackedLinear", torch.float32, 1e-6), ("PlainLinear", torch.bfloat16, 2**-7)]
LINEARS += [("Int8Linear", torch.bfloat16, None), ("Int8DynamicLinear", torch.float32, None), ("Int4Linear", torch.bfloat16, None)]


@pytest.mark.parametrize(("kind", "dtype", "limit"), LINEARS)
def test_linears(kind, dtype, limit):
    """拿单位矩阵当输入，得到的就是它存下的权重：误差不超过舍入的半步；输入全 0，得到的就是偏置。"""
    linear_class = getattr(load("exp_fast_decode_lowbit"), kind)
    torch.manual_seed(7)
    weight, bias = torch.randn(70, 64) * torch.logspace(-2, 0, 70)[:, None], torch.zeros(70)  # 各行大小悬殊：步长要一行一行地定
    linear = linear_class(weight, bias, dtype)
    got = linear(torch.eye(64, dtype=dtype)[None])[0].float() - bias.to(dtype).float()
    error = (got.T - weight).abs()
    if "Int8" in kind:
        limit = weight.abs().amax(dim=1, keepdim=True) * (1 / 127 / 2 * 1.01 + (2**-7 if dtype == torch.bfloat16 else 0))
    elif kind == "Int4Linear":
        groups = weight.view(70, 2, 32)
        limit = ((groups.amax(dim=-1) - groups.amin(dim=-1)) / 15 / 2).repeat_interleave(32, dim=1) * 1.1 + weight.abs().amax(dim=1, keepdim=True) * 2**-7
    else:
        limit = limit * weight.abs()
    assert (error <= limit + 1e-9).all()
    with_bias = linear_class(weight, torch.full((70,), 3.0), dtype)(torch.zeros(1, 1, 64, dtype=dtype))
    assert torch.equal(with_bias.float(), torch.full((1, 1, 70), 3.0))
    assert linear.nbytes == {"Int8Linear": 70 * 64, "Int8DynamicLinear": 70 * 64, "Int4Linear": 128 * 64 // 2 + 2 * 128 * 2 * 2}.get(kind, 70 * 64 * dtype.itemsize)


def missing_kernels():
    """这台机器跑不了的几种：oneDNN 的 fp16 内核要 CPU 有 avx512_fp16 或 avx_ne_convert，不少 AMD 和早些的 Intel 没有。"""
    try:
        torch.ops.mkldnn._reorder_linear_weight(torch.ones(64, 64, dtype=torch.float16), 1)
        return set()
    except RuntimeError:
        return {"fp16"}


def test_low_bit_decoder(decoding):
    """换过线性层的解码器：fp32 的两种与原来的 logits 相同，位数越少误差越大；原来的模型没有动。"""
    _, model, theirs, _ = decoding
    module, ids = load("exp_fast_decode_lowbit"), torch.randint(97, (1, 9), generator=torch.Generator().manual_seed(2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fused, errors = module.fuse_qkv(model), {}
    with torch.inference_mode():
        expected = theirs(ids)[0]
        for name, (parent, *plan) in module.PLANS.items():
            if name in missing_kernels():
                continue
            assert parent is None or sum(a != b for a, b in zip(plan, module.PLANS[parent][1:])) <= 2
            decoder = module.LowBitDecoder(model, fused, *plan, capacity=24)
            for cache in decoder.caches:
                cache.reset()
            got = torch.cat([decoder.forward(ids[:, i : i + 1])[:, -1].float() for i in range(9)])
            errors[name] = ((got - expected).abs().mean() / expected.std()).item()
    assert max(errors["fp32"], errors["fp32，权重重排"]) < 1e-4 < errors["int8 权重"] < errors["int4 权重"] < 0.5
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_perplexity_of_a_low_bit_decoder(decoding):
    """一个一个送，与原书的模型一次算完的困惑度相同。"""
    _, model, theirs, _ = decoding
    module, ids = load("exp_fast_decode_lowbit"), torch.randint(97, (20,), generator=torch.Generator().manual_seed(4))
    decoder = module.LowBitDecoder(model, module.fuse_qkv(model), *module.PLANS["fp32"][1:], capacity=24)
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(theirs(ids[None, :-1])[0, 1:], ids[2:]).exp().item()
    assert module.perplexity(decoder, ids) == pytest.approx(expected, rel=1e-4)


def test_low_bit_script(call, tmp_path, monkeypatch):
    module = load("exp_fast_decode_lowbit")
    monkeypatch.setattr(module, "QUICK_CONFIG", module.QUICK_CONFIG | {"emb_dim": 64, "n_heads": 2, "n_layers": 2})
    monkeypatch.setattr(module, "GPT_CONFIG_124M", module.QUICK_CONFIG)
    result = call("exp_fast_decode_lowbit", "--quick")
    check_output(result, tmp_path)
    rows = 7 - len(missing_kernels())  # 八种里第一种是起点，没有倍数
    assert set(re.findall("跳过「(.*?)」", result[1])) == missing_kernels()
    assert len(re.findall(r" +[\d.]+ 倍　　 *[\d.]+ 倍 +[\d.]+%　", result[1])) == rows
    assert not re.search("更快|更慢|分不出", result[1]) and "说不出 4 位伤不伤语言" in result[1]
    out = call("exp_fast_decode_lowbit", "--new-tokens", 8)[1]
    assert len(re.findall("要读的少 [\\d.]+ 倍，速度是 [\\d.]+ 倍，(更快|更慢|分不出)。", out)) == rows and "最快的是" in out


# ---- exp_flops_and_params ----

BOOK_FLOPS = {"small": "5.1e+11", "medium": "1.4e+12", "large": "3.2e+12", "xl": "6.4e+12"}  # 原书附加材料，2 × 1024 个词元，只数线性层


@pytest.mark.parametrize("size", BOOK_FLOPS)
def test_formula_equals_counting_the_books_model(book, size):
    module = load("exp_flops_and_params")
    cfg = module.BASE | module.SIZES[size]
    formula = module.by_formula(cfg, 2, 1024)
    with torch.device("meta"):
        theirs = book.GPTModel(cfg)
        idx = torch.zeros(2, 1024, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        theirs(idx)
    assert counter.get_total_flops() == sum(flops for _, flops in formula.values())
    assert sum(p.numel() for p in theirs.parameters()) == sum(params for params, _ in formula.values())
    linear = sum(flops for part, (_, flops) in formula.items() if part != "注意力分数")
    assert f"{linear:.1e}" == BOOK_FLOPS[size]


def test_flops_script(call, tmp_path):
    check_output(call("exp_flops_and_params", "--quick"), tmp_path)
    _, out, _ = call("exp_flops_and_params", "--quick", "--tokens", 4608, "--batch", 1)
    share, *linears = [float(re.search(rf"{part}.*?运算.*? ([\d.]+)%", out)[1]) for part in ("注意力分数", "注意力的投影", "前馈网络")]
    assert "✗" not in out and share == pytest.approx(sum(linears), abs=0.2)  # 「动手改」第 1 条


# ---- exp_model_scales ----


def test_model_scales_script(call, tmp_path, monkeypatch):
    module = load("exp_model_scales")
    monkeypatch.setattr(module, "SHAPES", [(2, 128), (8, 64)])
    monkeypatch.setattr(module, "GRID", [(4, 64)])
    result = call("exp_model_scales", "--quick", "--tokens", 16)
    check_output(result, tmp_path)
    for layers, emb_dim in [(2, 128), (8, 64)]:
        model = module.build(layers, emb_dim, "cpu")
        parameters = sum(p.numel() for p in model.parameters())
        line = next(line for line in result[1].splitlines() if re.match(rf" *{layers} +{emb_dim} ", line))
        assert f"{parameters:,}" in line and f"{16 * parameters / 2**20:.1f}" in line
    with pytest.raises(ValueError, match="不能被 64 整除"):
        module.build(1, 100, "cpu")


@pytest.mark.parametrize(("layers", "emb_dim"), [(2, 64), (3, 128)])
def test_flops_per_token_is_what_torch_counts(layers, emb_dim):
    module = load("exp_model_scales")
    model = module.build(layers, emb_dim, "meta")
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 50, dtype=torch.long, device="meta"))
    assert counter.get_total_flops() == 50 * module.flops_per_token(layers, emb_dim, 50, 512)


# ---- exp_weight_tying ----


def test_weight_tying_script(call, tmp_path):
    code, out, err = call("exp_weight_tying", "--quick", "--emb-dim", 64)
    assert code == 0 and "✗" not in out and out.count("✓") == 5, err
    assert (tmp_path / "outputs" / "weight_tying.png").is_file()
    counts = [int(number.replace(",", "")) for number in re.findall(r"参数 +([\d,]+)　", out)]  # 分开、分开、共用、共用
    assert len(counts) == 4 and counts[0] - counts[2] == 50257 * 64 and counts[0] == counts[1] and counts[2] == counts[3]


def test_tied_stays_tied_and_copy_does_not():
    """「动手改」第 3 条：只复制一次，走一步就各走各的。"""
    module = load("exp_weight_tying")
    cfg = TINY | {"qkv_bias": False}
    batch = torch.randint(97, (2, 20), generator=torch.Generator().manual_seed(0))
    tied, copied = module.build(True, False, cfg, 123), module.build(False, False, cfg, 123)
    with torch.no_grad():
        copied.out_head.weight.copy_(copied.tok_emb.weight)
    for model, same in ((tied, True), (copied, False)):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        module.loss_of(model, batch).backward()
        optimizer.step()
        assert torch.equal(model.out_head.weight, model.tok_emb.weight) is same
    assert module.gradient_gap(cfg, batch) < 1e-5
