"""5.5 节：读 OpenAI 格式的权重、装进 GPTModel，与 transformers 和 llms-from-scratch 的实现逐个比较；坏文件、坏参数。

运行：python -m pytest ch05/tests/test_gpt2_weights.py
真正的 OpenAI 权重在 LLM_DATA_DIR 里时（gpt2-124M.safetensors），才核对书上的数；其余测试用随机的权重，不联网。
"""

import importlib.util
import json
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

TESTS = Path(__file__).resolve().parent
MAIN = TESTS.parent / "main"
ROOT = TESTS.parents[1]
OFFICIAL = Path(os.environ.get("LLM_DATA_DIR", "no-such-folder")) / "gpt2-124M.safetensors"
TINY = {"n_vocab": 50257, "n_ctx": 64, "n_embd": 32, "n_head": 4, "n_layer": 3}
SECOND = {"n_vocab": 50257, "n_ctx": 64, "n_embd": 48, "n_head": 4, "n_layer": 2}
transformers = pytest.importorskip("transformers", reason="没有装 transformers，无法与它比较")


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shrink(module, monkeypatch):
    """把 124M 和 355M 换成极小的规模，测试才快。"""
    monkeypatch.setitem(module.GPT2_SETTINGS, "124M", TINY)
    monkeypatch.setitem(module.GPT2_SETTINGS, "355M", SECOND)
    if hasattr(module, "SIZES"):
        monkeypatch.setitem(module.SIZES, "124M", {"emb_dim": 32, "n_layers": 3, "n_heads": 4})
        monkeypatch.setitem(module.SIZES, "355M", {"emb_dim": 48, "n_layers": 2, "n_heads": 4})
        monkeypatch.setitem(module.BASE_CONFIG, "context_length", 64)
    return module


def pretend(name, monkeypatch, tmp_path):
    """导入一个脚本，让它以为自己在一个空的项目里：读者下载过的权重、训练过的模型，都影响不到测试。"""
    monkeypatch.delenv("LLM_DATA_DIR", raising=False)
    module = shrink(load(MAIN / name), monkeypatch)
    (tmp_path / "setup" / "data").mkdir(parents=True, exist_ok=True)
    monkeypatch.setitem(vars(module), "__file__", str(tmp_path / "ch05" / "main" / name))
    return module


@pytest.fixture
def gpt_download(monkeypatch, tmp_path):
    return pretend("gpt_download.py", monkeypatch, tmp_path)


@pytest.fixture
def gpt_generate(monkeypatch, tmp_path):
    module = pretend("gpt_generate.py", monkeypatch, tmp_path)
    module.OUTPUTS = tmp_path / "outputs"
    return module


@pytest.fixture
def call(monkeypatch, capsys):
    """call(模块, 参数…) → 退出码、stdout、那句中文；没有被接住的异常会让测试失败。"""

    def run(module, *args):
        capsys.readouterr()  # 前面 transformers 存文件的进度条，不算
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, args)])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                module.main()
                code = 0
            except SystemExit as stopped:
                code = stopped.code
        out, err = capsys.readouterr()
        err += "".join(f"{warning.message}\n" for warning in caught)
        if code == 2:
            assert err.count("\n") == 1 and err.startswith("出错了：") and re.search("[\u4e00-\u9fff]{2}", err) and "[Errno" not in err and out == "", out + err
        else:
            assert err == "" and "✗" not in out, out + err
        return code, out, err

    return run


def make_reference(settings, seed=0):
    """transformers 的 GPT-2，每个参数都随机：默认的初始化里偏置全是 0，极小的宽度下注意力又几乎是平均的，装错了也看不出来。"""
    torch.manual_seed(seed)
    names = {"n_vocab": "vocab_size", "n_ctx": "n_positions"}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**{names.get(key, key): value for key, value in settings.items()})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.normal_(mean=float("ln_" in name and "weight" in name), std=0.2)
            elif settings["n_embd"] < 100:
                parameter.normal_(std=0.2)
    return model


def weights_of(model, prefix="", masks=False, dtype=torch.float32):
    """像 hub 上那样的名字和内容。"""
    state = {prefix + name: value.detach().to(dtype).contiguous().clone() for name, value in model.transformer.state_dict().items()}
    if masks:  # hub 上的老文件里，每层都带着因果掩码
        for layer in range(model.config.n_layer):
            n_ctx = model.config.n_positions
            state[f"{prefix}h.{layer}.attn.bias"] = torch.tril(torch.ones(1, 1, n_ctx, n_ctx, dtype=dtype))
            state[f"{prefix}h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    return state


def config_of(settings):
    return {
        "vocab_size": settings["n_vocab"], "context_length": settings["n_ctx"], "emb_dim": settings["n_embd"],
        "n_heads": settings["n_head"], "n_layers": settings["n_layer"], "drop_rate": 0.1, "qkv_bias": True,
    }  # fmt: skip


def biggest_difference(ours, theirs, length):
    ids = torch.randint(50257, (2, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return (ours.eval()(ids) - theirs(ids).logits).abs().max().item()


@pytest.fixture(scope="module")
def reference():
    return make_reference(TINY)


# ── 与 transformers 相同 ──


@pytest.mark.parametrize("masks", [False, True], ids=["", "带掩码"])
@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_logits_equal_transformers(gpt_download, gpt_generate, reference, tmp_path, prefix, masks, dtype):
    path = tmp_path / "gpt2-124M.safetensors"
    save_file(weights_of(reference, prefix, masks, dtype), path)
    settings, params = gpt_download.download_and_load_gpt2(model_size="124M", models_dir=str(tmp_path))
    assert settings == TINY
    gpt = gpt_generate.GPTModel(config_of(TINY))
    gpt_generate.load_weights_into_gpt(gpt, params)
    theirs = make_reference(TINY) if dtype != torch.float32 else reference
    theirs.to(dtype).float()  # 半精度的文件，与半精度的权重比
    assert biggest_difference(gpt, theirs, 64) < 1e-4


MUTATIONS = {
    "Q、K 对调": ("zip((block.att.W_query, block.att.W_key,", "zip((block.att.W_key, block.att.W_query,"),
    "K、V 对调": ("block.att.W_key, block.att.W_value)", "block.att.W_value, block.att.W_key)"),
    "QKV 忘了转置": ("assign(linear.weight, w.T)", "assign(linear.weight, w)"),
    "QKV 忘了偏置": ("assign(linear.bias, b)", "assign(linear.bias, b * 0)"),
    "c_proj 忘了转置": ('assign(linear.weight, part["w"].T)', 'assign(linear.weight, part["w"] if len(set(part["w"].shape)) == 1 else part["w"].T)'),
    "归一化对调": ('[(block.norm1, block_params["ln_1"]), (block.norm2,', '[(block.norm2, block_params["ln_1"]), (block.norm1,'),
    "缩放当平移": ('assign(norm.shift, part["b"])', 'assign(norm.shift, part["g"])'),
    "忘了输出层": ("    gpt.out_head.weight = assign(gpt.out_head.weight", "    gpt.tok_emb.weight = assign(gpt.out_head.weight"),
    "忘了最后的归一化": ("    gpt.final_norm.scale = assign(", "    _ = assign("),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_mistakes_would_be_noticed(gpt_download, reference, tmp_path, name):
    """装错一处，一个错也不报，但与 transformers 的 logits 就差得远：上面的比较真的挡得住它们。"""
    source, (right, wrong) = (MAIN / "gpt_generate.py").read_text(encoding="utf-8"), MUTATIONS[name]
    assert source.count(right) == 1
    module = {"__name__": "mutated", "__file__": str(MAIN / "gpt_generate.py")}
    exec(compile(source.replace(right, wrong), name, "exec"), module)
    save_file(weights_of(reference), tmp_path / "gpt2-124M.safetensors")
    _, params = gpt_download.download_and_load_gpt2("124M", tmp_path)
    torch.manual_seed(0)
    gpt = module["GPTModel"](config_of(TINY))
    module["load_weights_into_gpt"](gpt, params)
    assert biggest_difference(gpt, reference, 64) > 0.01


@pytest.mark.parametrize("with_head", [True, False])
def test_files_saved_by_transformers(gpt_generate, reference, tmp_path, call, with_head):
    """transformers 自己存的文件，直接就能生成；贪心的结果与它的相同。"""
    (reference if with_head else reference.transformer).save_pretrained(tmp_path, safe_serialization=True)
    ids = torch.tensor([gpt_generate.load_gpt2_tokenizer().encode("Every effort moves you")])
    theirs = reference.generate(ids, max_new_tokens=9, do_sample=False, pad_token_id=50256, use_cache=False)
    for size in ([], ["--size", "124M"]):
        code, out, err = call(gpt_generate, "--from-file", tmp_path / "model.safetensors", "--max-new-tokens", 9, *size)
        assert code == 0, err
        text = gpt_generate.load_gpt2_tokenizer().decode(theirs[0].tolist())
        assert out.split("\n\n", 1)[1].startswith(text.split("<|endoftext|>")[0])
        assert str(tmp_path / "model.safetensors") in out and "OpenAI" in out and "3 层，32 维，4 头" in out


def test_the_real_size(tmp_path, monkeypatch, call):
    """真正的 124M 大小，随机的权重：与 transformers 的 logits 相同，参数的个数与书上的相同，读文件不占内存。"""
    monkeypatch.delenv("LLM_DATA_DIR", raising=False)
    gpt_download, gpt_generate = load(MAIN / "gpt_download.py"), load(MAIN / "gpt_generate.py")
    theirs = make_reference(gpt_download.GPT2_SETTINGS["124M"])
    path = tmp_path / "gpt2-124M.safetensors"
    save_file(weights_of(theirs), path)

    def private_memory():
        found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text()) if sys.platform == "linux" else None
        return int(found[1]) / 1024 if found else 0

    before = private_memory()
    settings, params = gpt_download.download_and_load_gpt2("124M", tmp_path)
    assert private_memory() - before < 60  # MB；整个文件是 498 MB
    assert settings == {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12}  # 5-17
    assert sorted(params) == ["b", "blocks", "g", "wpe", "wte"] and len(params["blocks"]) == 12
    assert params["wte"].shape == (50257, 768) and params["blocks"][11]["attn"]["c_attn"]["w"].shape == (768, 2304)
    kept = params["wte"][0, 0]
    params["wte"][0, 0] = 7  # 改数组不会改到文件
    assert gpt_download.download_and_load_gpt2("124M", tmp_path)[1]["wte"][0, 0] == kept
    params["wte"][0, 0] = kept

    model, config, _ = gpt_generate.load_model(path)
    assert sum(p.numel() for p in model.parameters()) == 163_037_184  # 163,009,536 加上 Q、K、V 的偏置 12·3·768
    assert config["context_length"] == 1024 and config["n_heads"] == 12
    assert gpt_generate.memory_needed(config) == pytest.approx(sum(t.numel() * t.element_size() for t in model.state_dict().values()) / 2**30, rel=1e-3)
    assert biggest_difference(model, theirs, 12) < 1e-4

    code, out, _ = call(gpt_download, "--models-dir", tmp_path)
    assert code == 0 and "124,439,808" in out and "(50257, 768)" in out and "wte 的开头" not in out  # 不是 OpenAI 的那份，就不核对书上的数


def test_params_feed_the_reference_loader(gpt_download, gpt_generate, reference, tmp_path):
    """params 的结构与原书的相同：原书作者的 load_weights_into_gpt 读它，得到同样的模型。"""
    theirs = pytest.importorskip("llms_from_scratch.ch05", reason="没有装 llms-from-scratch，无法与它比较")
    from llms_from_scratch.ch04 import GPTModel

    save_file(weights_of(reference), tmp_path / "gpt2-124M.safetensors")
    _, params = gpt_download.download_and_load_gpt2("124M", tmp_path)
    models = [gpt_generate.GPTModel(config_of(TINY)), GPTModel(config_of(TINY))]
    gpt_generate.load_weights_into_gpt(models[0], params)
    theirs.load_weights_into_gpt(models[1], params)
    ours, other = (dict(model.named_parameters()) for model in models)
    assert ours.keys() == other.keys() and all(torch.equal(ours[name], other[name]) for name in ours)


# ── 原书的状态字典 ──


def book_model(context_length=64, qkv_bias=True, seed=3):
    from llms_from_scratch.ch04 import GPTModel

    torch.manual_seed(seed)
    return GPTModel(config_of(TINY) | {"context_length": context_length, "qkv_bias": qkv_bias}).eval()


@pytest.mark.parametrize("kind", ["pth", "safetensors", "连优化器", "半精度", "后缀不对"])
@pytest.mark.parametrize(("context_length", "qkv_bias"), [(64, True), (16, False)])
def test_state_dict_of_the_book(gpt_generate, tmp_path, call, kind, context_length, qkv_bias):
    """原书发布的 .pth 和 .safetensors（名字相同，掩码是浮点数）；5.2 节训练的（不带偏置、上下文短）也行。"""
    pytest.importorskip("llms_from_scratch.ch04", reason="没有装 llms-from-scratch，无法与它比较")
    book = book_model(context_length, qkv_bias)
    if kind == "半精度":
        book = book.bfloat16()
    state = {name: value.clone() for name, value in book.state_dict().items()}
    path = tmp_path / ("book.safetensors" if kind in ("safetensors", "半精度") else "book.pth")
    if kind in ("safetensors", "半精度", "后缀不对"):
        save_file(state, path)
    else:
        torch.save(state if kind == "pth" else {"model_state_dict": state, "optimizer_state_dict": {"state": {}, "param_groups": []}}, path)
    model, config, name = gpt_generate.load_model(path)
    assert (config["context_length"], config["qkv_bias"], config["n_heads"], name) == (context_length, qkv_bias, 4, "状态字典")
    ids = torch.randint(50257, (2, context_length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(model.eval()(ids), book.float()(ids), atol=1e-5)
    code, out, err = call(gpt_generate, "--from-file", path, "--max-new-tokens", 4)
    assert code == 0 and "状态字典" in out, err


def test_state_dict_with_another_head(gpt_generate, tmp_path, call):
    """第 6 章把输出层换成了 2 类：不是语言模型，说清楚。"""
    state = dict(gpt_generate.GPTModel(config_of(TINY)).state_dict()) | {"out_head.weight": torch.zeros(2, 32)}
    torch.save(state, tmp_path / "classifier.pth")
    assert "对不上" in call(gpt_generate, "--from-file", tmp_path / "classifier.pth")[2]


# ── 坏文件 ──


def bad_files(reference, folder):
    """名字 → 文件内容怎么坏。"""
    good = weights_of(reference)
    other = weights_of(make_reference(SECOND))
    w = "h.1.attn.c_attn.weight"
    files = {
        "少一项": {name: value for name, value in good.items() if name != w},
        "少 wpe": {name: value for name, value in good.items() if name != "wpe.weight"},
        "多一项": good | {"score.weight": torch.zeros(2, 32)},
        "转置过": good | {w: good[w].T.contiguous()},
        "少一行": good | {"ln_f.bias": torch.zeros(31)},
        "维数不对": good | {"wte.weight": torch.zeros(50257)},
        "整数": good | {w: torch.zeros(good[w].shape, dtype=torch.int8)},
        "词表变大": good | {"wte.weight": torch.zeros(50258, 32)},
        "上下文变短": good | {"wpe.weight": torch.zeros(32, 32)},
        "多一层": good | {name.replace("h.0.", "h.3."): value.clone() for name, value in good.items() if name.startswith("h.0.")},
        "输出层不共享": good | {"lm_head.weight": torch.ones(50257, 32)},
        "别的规模": other,
        "别的模型": {"bert.embeddings.word_embeddings.weight": torch.zeros(9, 9)},
        "一项也没有": {},
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).mkdir(parents=True)
        save_file(content, folder / name / "gpt2-124M.safetensors")
    whole = folder / "good.safetensors"
    save_file(good, whole)
    data = whole.read_bytes()
    length = int.from_bytes(data[:8], "little")
    raw = {"空的": b"", "截断": data[: len(data) // 2], "只有目录": data[: 8 + length], "网页": b"<html>login</html>" * 99}
    raw["目录乱了"] = data[:8] + b"{" + b"x" * (len(data) - 9)
    raw |= {"目录太长": b"\xff" * 8 + data[8:], "pickle": pickle.dumps({"wte.weight": 1}), "9 个字节": b"\0" * 8 + b"{"}
    header = json.loads(data[8 : 8 + length])
    header["wte.weight"]["data_offsets"][0] += 10**12
    text = json.dumps(header).encode()
    raw["偏移越界"] = len(text).to_bytes(8, "little") + text + data[8 + length :]
    for name, content in raw.items():
        (folder / name).mkdir()
        (folder / name / "gpt2-124M.safetensors").write_bytes(content)
    return [folder / name / "gpt2-124M.safetensors" for name in [*files, *raw]]


def test_bad_files_are_refused(gpt_download, gpt_generate, reference, tmp_path, call):
    for path in bad_files(reference, tmp_path):
        code, _, err = call(gpt_download, "--models-dir", path.parent)
        assert code == 2 and str(path) in err, path.parent.name
        for size in ([], ["--size", "124M"])[path.parent.name == "别的规模" :]:  # 不说规模的话，它就是一份好的 355M
            code, _, err = call(gpt_generate, "--from-file", path, "--max-new-tokens", 2, *size)
            assert code == 2 and str(path) in err, (path.parent.name, err)


def test_messages_say_what_is_wrong(gpt_download, reference, tmp_path, call):
    bad_files(reference, tmp_path)
    messages = {"少一项": "少了 h.1.attn.c_attn.weight", "多一项": "多出 score.weight", "转置过": "(96, 32)，应是 (32, 96)", "整数": "int8", "别的规模": "是 355M", "多一层": "多出 h.3.",
                "截断": "--verify", "网页": "不是 safetensors", "别的模型": "少了 wte.weight", "输出层不共享": "不是同一个矩阵"}  # fmt: skip
    for name, words in messages.items():
        assert words in call(gpt_download, "--models-dir", tmp_path / name)[2], name


class Dangerous:
    """读它的人会建一个文件：用来看代码有没有被执行。"""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_pickles_are_never_executed(gpt_download, gpt_generate, tmp_path, call):
    trap = Dangerous(tmp_path / "executed")
    state = gpt_generate.GPTModel(config_of(TINY)).state_dict()
    contents = [{"model_state_dict": trap}, state | {"trap": trap}, {"config": trap, "model": state}, trap]
    for path in (tmp_path / "gpt2-124M.safetensors", tmp_path / "model.pth"):  # torch.load 看后缀，遇到 .safetensors 走另一条路
        for write in [lambda path: path.write_bytes(pickle.dumps(trap)), *(lambda path, content=content: torch.save(content, path) for content in contents)]:
            write(path)
            assert call(gpt_generate, "--from-file", path)[0] == 2
            assert call(gpt_download, "--models-dir", tmp_path)[0] == 2
            assert not (tmp_path / "executed").exists()


def test_strange_dictionaries(gpt_generate, tmp_path, call):
    """能读出来、但不是权重的 .pth。"""
    state = gpt_generate.GPTModel(config_of(TINY)).state_dict()
    config, hub = config_of(TINY), {"wte.weight": torch.zeros(50257, 6), "wpe.weight": torch.zeros(8, 6), "h.0.ln_1.weight": torch.zeros(6)}
    without = {part: {name: value for name, value in state.items() if part not in name} for part in ("pos_emb", "W_key")}
    contents = [{}, [], 5, {"tok_emb.weight": 5}, {"tok_emb.weight": torch.zeros(())}, {1: torch.zeros(2)}, {"model_state_dict": [1]}, {"model_state_dict": {}}]
    contents += [*without.values(), {name: value.int() for name, value in state.items()}, state | {"extra": torch.zeros(1)}]
    contents += [state | dict.fromkeys(["tok_emb.weight", "out_head.weight"], torch.zeros(50258, 32)), state | {"pos_emb.weight": torch.zeros(())}]
    contents += [{"config": wrong, "model": state} for wrong in ({}, [4], 1, config | {"n_layers": 2}, *(config | {"n_heads": heads} for heads in (0, 5, "四")))]
    contents += [{"config": 1, "model": 2}, {"config": {}, "model": {}}, {"config": {"n_heads": 2}, "model": hub}]
    for number, content in enumerate(contents):
        torch.save(content, tmp_path / "strange.pth")
        assert call(gpt_generate, "--from-file", tmp_path / "strange.pth")[0] == 2, number


def test_masks_are_not_needed(gpt_generate, tmp_path):
    """有的状态字典不带掩码，有的带着浮点数的：掩码都是模型自己的，因果性不变。"""
    torch.manual_seed(0)
    state = gpt_generate.GPTModel(config_of(TINY)).state_dict()
    torch.save({name: value for name, value in state.items() if "mask" not in name}, tmp_path / "without.pth")
    torch.save({name: torch.zeros(64, 64) if "mask" in name else value for name, value in state.items()}, tmp_path / "broken.pth")
    ids = torch.randint(50257, (1, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        first, second = (gpt_generate.load_model(tmp_path / name)[0].eval()(ids) for name in ("without.pth", "broken.pth"))
    assert torch.equal(first, second)


def test_damaged_bytes(gpt_generate, tmp_path):
    """截断、改几个字节、换掉一段，几百种：要么读得出来，要么是一句中文的 ValueError，别无其他。"""
    state, rng, path, refused = gpt_generate.GPTModel(config_of(TINY)).state_dict(), random.Random(3), tmp_path / "x", 0
    torch.save({"config": config_of(TINY), "model": state}, path)
    files = [path.read_bytes()]
    save_file(dict(state), path)
    files.append(path.read_bytes())
    for trial in range(240):
        data = bytearray(files[trial % 2])
        start = data.index(b"data.pkl") if trial % 2 == 0 else 0
        if trial % 3 == 0:
            data = data[: rng.randrange(len(data))]
        elif trial % 3 == 1:
            for _ in range(rng.randrange(1, 6)):
                data[start + rng.randrange(4000)] = rng.randrange(256)
        else:
            place = start + rng.randrange(4000)
            data[place : place + rng.randrange(30)] = rng.randbytes(rng.randrange(30))
        path.write_bytes(data)
        try:
            assert gpt_generate.load_model(path)[1]["n_layers"] == 3
        except ValueError as error:
            refused += 1
            assert re.search("[\u4e00-\u9fff]", str(error))
    assert refused > 150


# ── 用哪个文件 ──


def test_where_the_weights_are_looked_for(gpt_download, reference, tmp_path, monkeypatch, call):
    """models_dir → LLM_DATA_DIR → setup/downloads；文件名与 setup/download.py 的相同。"""
    for size in load(MAIN / "gpt_download.py").GPT2_SETTINGS:
        assert load(ROOT / "setup" / "download.py").ITEMS[f"gpt2-{size}"].file == f"gpt2-{size}.safetensors"
        with pytest.raises(FileNotFoundError, match=f"setup/download.py gpt2-{size}"):
            gpt_download.find_gpt2_file(size, tmp_path)

    monkeypatch.setenv("LLM_DATA_DIR", str(tmp_path / "mine"))
    assert "setup/download.py gpt2-124M" in call(gpt_download)[2]  # 这个假的项目里没有 setup/download.py，只能告诉读者
    folders = [tmp_path / "setup" / "downloads", tmp_path / "mine", tmp_path / "given"]
    for folder in folders:
        folder.mkdir()
        save_file(weights_of(reference), folder / "gpt2-124M.safetensors")
        code, out, err = call(gpt_download, "--models-dir", tmp_path / "given")
        assert code == 0 and str(folder / "gpt2-124M.safetensors") in out, err


@pytest.mark.parametrize("works", [True, False])
def test_missing_weights_are_downloaded(works, reference, tmp_path):
    """没有文件，就运行 setup/download.py（这里换成假的），下载好了接着读；没下载成，只有它说的那一句，退出码也是它的。"""
    for folder in ("ch05/main", "setup/data", "setup/downloads"):
        (tmp_path / folder).mkdir(parents=True)
    save_file(weights_of(reference), tmp_path / "ready.safetensors")
    source = (MAIN / "gpt_download.py").read_text(encoding="utf-8")
    real = '"124M": {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12}'
    assert real in source
    script = tmp_path / "ch05" / "main" / "gpt_download.py"
    script.write_text(source.replace(real, f'"124M": {TINY}'), encoding="utf-8")
    copy = "import shutil, sys; assert sys.argv[1:] == ['gpt2-124M']; shutil.copy('ready.safetensors', 'setup/downloads/gpt2-124M.safetensors')"
    (tmp_path / "setup" / "download.py").write_text(copy if works else "import sys; sys.exit('出错了：没有网络')", encoding="utf-8")
    env = {key: value for key, value in os.environ.items() if key != "LLM_DATA_DIR"} | {"PYTHONIOENCODING": "utf-8", "PYTHONUTF8": "1"}
    result = subprocess.run([sys.executable, str(script)], env=env, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=120)
    if works:
        assert result.returncode == 0 and result.stderr == "" and "(50257, 32)" in result.stdout, result.stderr
    else:
        assert result.returncode == 1 and result.stdout == "" and result.stderr == "出错了：没有网络\n"


def test_which_file_is_used(gpt_generate, reference, tmp_path, monkeypatch, call):
    """mini 是自己训练的；124M 先用下载的，没有才用自己训练的；--from-file 说了算。"""
    for size, words in {"mini": "gpt_train.py", "124M": "gpt2-124M", "355M": "gpt2-355M"}.items():
        code, _, err = call(gpt_generate, "--size", size)
        assert code == 2 and words in err and ("download.py" in err) == (size != "mini")
    assert "gpt_train.py" in call(gpt_generate)[2]

    gpt_generate.OUTPUTS.mkdir()
    config = config_of(TINY)
    trained = {"config": config, "model": gpt_generate.GPTModel(config).state_dict()}
    torch.save(trained, gpt_generate.OUTPUTS / "gpt_124M.pth")
    torch.save(trained, gpt_generate.OUTPUTS / "gpt_mini.pth")
    code, out, _ = call(gpt_generate, "--size", "124M", "--max-new-tokens", 2)
    assert code == 0 and "检查点" in out and "gpt_124M.pth" in out
    code, out, _ = call(gpt_generate, "--max-new-tokens", 2)
    assert code == 0 and "gpt_mini.pth" in out

    save_file(weights_of(reference), tmp_path / "gpt2-124M.safetensors")
    monkeypatch.setenv("LLM_DATA_DIR", str(tmp_path))
    code, out, _ = call(gpt_generate, "--size", "124M", "--max-new-tokens", 2)
    assert code == 0 and "OpenAI" in out and str(tmp_path / "gpt2-124M.safetensors") in out
    code, out, _ = call(gpt_generate, "--size", "124M", "--max-new-tokens", 2, "--from-file", gpt_generate.OUTPUTS / "gpt_124M.pth")
    assert code == 0 and "检查点" in out
    assert call(gpt_generate, "--from-file", tmp_path / "nosuch.safetensors")[0] == 2


def test_size_must_match_the_file(gpt_generate, reference, tmp_path, call):
    """hub 的、原书的、检查点，三种文件给错了 --size 都拒绝。"""
    state = gpt_generate.GPTModel(config_of(TINY)).state_dict()
    save_file(weights_of(reference), tmp_path / "hub.safetensors")
    torch.save(dict(state), tmp_path / "book.pth")
    torch.save({"config": config_of(TINY), "model": state}, tmp_path / "checkpoint.pth")
    for name in ("hub.safetensors", "book.pth", "checkpoint.pth"):
        assert call(gpt_generate, "--from-file", tmp_path / name, "--size", "124M", "--max-new-tokens", 2)[0] == 0
        for size in ("355M", "774M", "mini"):
            code, _, err = call(gpt_generate, "--from-file", tmp_path / name, "--size", size)
            assert code == 2 and f"不是 {size}" in err


# ── 内存、装权重的小函数 ──


def test_memory_is_checked_before_loading(gpt_generate, reference, tmp_path, monkeypatch, call):
    save_file(weights_of(reference), tmp_path / "hub.safetensors")
    torch.save(dict(gpt_generate.GPTModel(config_of(TINY)).state_dict()), tmp_path / "book.pth")
    monkeypatch.setattr(gpt_generate, "GPTModel", None)  # 建模型就会出错：说明还没建就拒绝了
    monkeypatch.setattr(gpt_generate, "total_memory", lambda: 0.505)
    for name in ("hub.safetensors", "book.pth"):
        code, _, err = call(gpt_generate, "--from-file", tmp_path / name)
        assert code == 2 and "GB 内存" in err and "只有 0.5 GB" in err
    monkeypatch.setattr(gpt_generate, "total_memory", lambda: 1.0)
    with pytest.raises(ValueError, match="装得下的有：.*--size 355M"):
        gpt_generate.check_memory(config_of(TINY) | {"n_layers": 10**5})
    monkeypatch.setattr(gpt_generate, "total_memory", lambda: 8.0)
    with pytest.raises(ValueError, match="这台机器只有 8.0 GB；装得下的有：--size mini、--size 124M、--size 355M、--size 774M、--size 1558M"):
        gpt_generate.check_memory(config_of(TINY) | {"n_layers": 10**6})
    monkeypatch.setattr(gpt_generate, "total_memory", lambda: None)  # 不知道有多少内存，就让它试
    gpt_generate.check_memory(config_of(TINY) | {"n_layers": 10**9})


@pytest.mark.parametrize(("size", "parameters"), [("124M", 124_439_808), ("355M", 354_823_168), ("774M", 774_030_080), ("1558M", 1_557_611_200)])
def test_sizes(size, parameters):
    """两个脚本里的规模一致，而且数出来正是公开的参数个数。"""
    gpt_generate = load(MAIN / "gpt_generate.py")
    config, settings = gpt_generate.BASE_CONFIG | gpt_generate.SIZES[size], gpt_generate.GPT2_SETTINGS[size]
    assert settings == load(MAIN / "gpt_download.py").GPT2_SETTINGS[size]
    assert config == config_of(settings) | {"drop_rate": 0.0}
    masks = config["n_layers"] * 1024**2 / 4
    untied = config["vocab_size"] * config["emb_dim"]
    assert gpt_generate.memory_needed(config) * 2**30 / 4 - masks - untied == pytest.approx(parameters, abs=1)
    assert config["emb_dim"] // config["n_heads"] == 64


def test_assign_and_mismatches(gpt_generate, gpt_download, reference, tmp_path):
    left = torch.nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))
    new = gpt_generate.assign(left, np.arange(6, dtype=np.float32).reshape(3, 2).T)
    assert isinstance(new, torch.nn.Parameter) and new.requires_grad and new.dtype == torch.float64 and new.tolist() == [[0, 2, 4], [1, 3, 5]]
    for wrong in (np.zeros((3, 2)), np.zeros(3), np.zeros((1, 3))):
        with pytest.raises(ValueError, match="形状不同"):
            gpt_generate.assign(left, wrong)
    save_file(weights_of(reference), tmp_path / "gpt2-124M.safetensors")
    _, params = gpt_download.download_and_load_gpt2("124M", tmp_path)
    for change, words in {("qkv_bias", False): "qkv_bias=True", ("n_layers", 2): "3 块", ("context_length", 32): "形状不同", ("emb_dim", 48): "形状不同"}.items():
        with pytest.raises(ValueError, match=words):
            gpt_generate.load_weights_into_gpt(gpt_generate.GPTModel(config_of(TINY) | dict([change])), params)
    with pytest.raises(ValueError, match="1558M"):
        gpt_download.download_and_load_gpt2("117M", tmp_path)


def test_loaded_model_trains_untied(gpt_generate, gpt_download, reference, tmp_path):
    """装好之后输出层与词嵌入相同，但是两份：训练一步，各改各的；权重数组不受影响。"""
    save_file(weights_of(reference), tmp_path / "gpt2-124M.safetensors")
    _, params = gpt_download.download_and_load_gpt2("124M", tmp_path)
    kept = params["wte"].copy()
    gpt = gpt_generate.GPTModel(config_of(TINY) | {"drop_rate": 0.0})
    gpt_generate.load_weights_into_gpt(gpt, params)
    assert torch.equal(gpt.out_head.weight, gpt.tok_emb.weight) and gpt.out_head.weight is not gpt.tok_emb.weight
    optimizer = torch.optim.SGD(gpt.parameters(), lr=1.0)
    ids = torch.tensor([[1, 2, 3, 4]])
    torch.nn.functional.cross_entropy(gpt(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
    optimizer.step()
    assert not torch.equal(gpt.out_head.weight, gpt.tok_emb.weight) and np.array_equal(params["wte"], kept)


def test_help_and_bad_arguments(gpt_download, gpt_generate, call):
    for module in (gpt_download, gpt_generate):
        code, out, _ = call(module, "--help")
        assert code == 0 and out.startswith("用法：") and "--size" in out
        for case in (["--size", "117M"], ["--nosuch"], ["--size"]):
            assert call(module, *case)[0] == 2


# ── 逐步讲解 ──


def test_walkthrough_without_weights(tmp_path):
    """没有真正的权重：造一个小文件走完全程；装对了的误差极小，五种装错法都看得出来。"""
    env = {key: value for key, value in os.environ.items() if key != "LLM_DATA_DIR"} | {"PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}
    # 读者也许已经把权重下载到了 setup/downloads/，所以拷到别处运行
    script = shutil.copy(MAIN / "example_05_openai_weights.py", tmp_path)
    result = subprocess.run([sys.executable, script], env=env, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=300)
    assert result.returncode == 0 and result.stderr == "" and "✗" not in result.stdout and result.stdout.count("✓") == 6, result.stdout + result.stderr
    assert "自己造的小文件" in result.stdout and "wte (50257, 768)，开头 -0.11010301 -0.03926672 0.03310751" in result.stdout
    assert float(re.search(r"logits 最多差 ([\d.e+-]+)", result.stdout)[1]) < 1e-4
    wrong = [float(number) for number in re.findall(r"^ +(\d+\.\d{3})　", result.stdout, re.MULTILINE)]
    assert len(wrong) == 5 and min(wrong) > 0.1
    stored, total, more = (int(number.replace(",", "")) for number in re.search(r"文件里 ([\d,]+) 个数；我们的模型 ([\d,]+) 个，多出的 ([\d,]+) 个", result.stdout).groups())
    assert total - stored == more == 50257 * 48
    assert list(tmp_path.iterdir()) == [Path(script)]  # 临时文件都收拾了


def test_by_hand_equals_transformers(gpt_download, reference, tmp_path):
    """讲解里"照 OpenAI 的写法"的那个函数，本身也与 transformers 相同：拿它当证据才站得住。"""
    source = (MAIN / "example_05_openai_weights.py").read_text(encoding="utf-8")
    function = source[source.index("def gpt2_by_hand") : source.index("tokenizer = load_gpt2_tokenizer()")]
    names = {"torch": torch, "nn": torch.nn}
    exec(function, names)
    save_file(weights_of(reference), tmp_path / "gpt2-124M.safetensors")
    _, params = gpt_download.download_and_load_gpt2("124M", tmp_path)
    ids = torch.randint(50257, (64,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (names["gpt2_by_hand"](ids, params, TINY["n_head"]) - reference(ids[None]).logits[0]).abs().max() < 1e-4


@pytest.mark.skipif(not OFFICIAL.is_file(), reason="没有 OpenAI 的 124M 权重：请把 gpt2-124M.safetensors 放进 LLM_DATA_DIR 指的文件夹")
def test_official_weights(call):
    """真正的权重：书上 5-17、5-18、5-19 的数。"""
    code, out, _ = call(load(MAIN / "gpt_download.py"))
    assert code == 0 and out.count("✓") == 3
    code, out, _ = call(load(MAIN / "gpt_generate.py"), "--size", "124M", "--temperature", 1.5, "--top-k", 50)
    assert code == 0 and "✓ 与原书 5.5 节写的一字不差" in out
