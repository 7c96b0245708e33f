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
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import torch
from safetensors.torch import save_file

TESTS = Path(__file__).resolve().parent
MAIN = TESTS.parent / "main"
ROOT = TESTS.parents[1]
VOCABULARY = ROOT / "setup" / "downloads" / "tiktoken"
OFFICIAL = Path(os.environ.get("LLM_DATA_DIR", "no-such-folder")) / "gpt2-124M.safetensors"
TINY = {"n_vocab": 50257, "n_ctx": 64, "n_embd": 32, "n_head": 4, "n_layer": 3}
SECOND = {"n_vocab": 50257, "n_ctx": 64, "n_embd": 48, "n_head": 4, "n_layer": 2}
transformers = pytest.importorskip("transformers", reason="没有装 transformers，无法与它比较")


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def walkthrough(*names):
    """从逐步讲解里取出几个函数，不运行整篇。"""
    import ast

    tree = ast.parse((MAIN / "example_05_openai_weights.py").read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    assert len(tree.body) == len(names)
    space = {"np": np, "torch": torch, "nn": torch.nn}
    exec(compile(tree, "example_05", "exec"), space)
    return [space[name] for name in names]


def pretend(name, monkeypatch, folder):
    """导入一个脚本，让它以为自己在一个空的项目里：读者下载过的权重、训练过的模型，都影响不到测试。"""
    monkeypatch.delenv("LLM_DATA_DIR", raising=False)
    module = load(MAIN / name)
    (folder / "setup" / "data").mkdir(parents=True, exist_ok=True)
    monkeypatch.setitem(vars(module), "__file__", str(folder / "ch05" / "main" / name))
    return module


@pytest.fixture
def gpt_download(monkeypatch, tmp_path):
    """124M 和 355M 换成了极小的规模，测试才快。"""
    module = pretend("gpt_download.py", monkeypatch, tmp_path)
    monkeypatch.setitem(module.GPT2_SETTINGS, "124M", TINY)
    monkeypatch.setitem(module.GPT2_SETTINGS, "355M", SECOND)
    module.OUTPUTS = tmp_path / "ch05" / "outputs"
    module.OUTPUTS.mkdir(parents=True)
    return module


@pytest.fixture
def gpt_generate(monkeypatch, tmp_path):
    return pretend("gpt_generate.py", monkeypatch, tmp_path)


@pytest.fixture
def call(monkeypatch, capsys):
    """call(模块, 参数…) → 退出码、stdout、stderr；没有被接住的异常会让测试失败。"""

    def run(module, *args):
        capsys.readouterr()  # 前面 transformers 存文件的进度条，不算
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, args)])
        try:
            module.main()
            code = 0
        except SystemExit as stopped:
            code = stopped.code
        out, err = capsys.readouterr()
        if code == 2:
            assert out == "" and re.search("[\u4e00-\u9fff]{2}", err.splitlines()[-1]) and "[Errno" not in err, out + err
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
        "n_heads": settings["n_head"], "n_layers": settings["n_layer"], "drop_rate": 0.0, "qkv_bias": True,
    }  # fmt: skip


def biggest_difference(ours, theirs, length):
    ids = torch.randint(50257, (2, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return (ours.eval()(ids) - theirs(ids).logits).abs().max().item()


def convert(gpt_download, path, settings=TINY):
    return gpt_download.build_gpt(gpt_download.read_tensors(path), settings, path)[0]


def three_lines(module, path):
    """第 6、7 章的开头三行。"""
    ckpt = torch.load(path, map_location="cpu", weights_only=True)
    assert list(ckpt) == ["config", "model"]
    model = module.GPTModel(ckpt["config"])
    model.load_state_dict(ckpt["model"])
    return model, ckpt["config"]


@pytest.fixture(scope="module")
def reference():
    return make_reference(TINY)


# ── 与 transformers 相同 ──


@pytest.mark.parametrize("masks", [False, True], ids=["", "带掩码"])
@pytest.mark.parametrize("prefix", ["", "transformer.", "module.transformer."])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_logits_equal_transformers(gpt_download, reference, tmp_path, prefix, masks, dtype):
    path = tmp_path / "gpt2-124M.safetensors"
    save_file(weights_of(reference, prefix, masks, dtype), path)
    theirs = make_reference(TINY) if dtype != torch.float32 else reference
    theirs.to(dtype).float()  # 半精度的文件，与半精度的权重比
    assert biggest_difference(convert(gpt_download, path), theirs, 64) < 1e-4


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
    "ln_f 的 g 当成 b": ("            params[last] = array", "            params[last] = tensors['ln_f.bias'].float().numpy()"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_mistakes_would_be_noticed(reference, name):
    """装错一处，一个错也不报，但与 transformers 的 logits 就差得远：上面的比较真的挡得住它们。"""
    source, (right, wrong) = (MAIN / "gpt_download.py").read_text(encoding="utf-8"), MUTATIONS[name]
    assert source.count(right) == 1
    module = {"__name__": "mutated", "__file__": str(MAIN / "gpt_download.py")}
    exec(compile(source.replace(right, wrong), name, "exec"), module)
    torch.manual_seed(0)
    gpt = module["GPTModel"](config_of(TINY))
    module["load_weights_into_gpt"](gpt, module["nest_gpt2_params"](weights_of(reference), TINY))
    assert biggest_difference(gpt, reference, 64) > 0.01


@pytest.mark.parametrize("with_head", [True, False])
def test_convert_then_generate(gpt_download, gpt_generate, reference, tmp_path, call, with_head):
    """transformers 自己存的文件：转换，三行读回，logits 相同；再让 gpt_generate 写，与 transformers 的贪心一字不差。"""
    (reference if with_head else reference.transformer).save_pretrained(tmp_path, safe_serialization=True)
    code, out, _ = call(gpt_download, "--from-file", tmp_path / "model.safetensors")
    saved = gpt_download.OUTPUTS / "gpt2-124M.pth"
    assert code == 0 and out.count("✓") == 2 and str(saved) in out and os.listdir(gpt_download.OUTPUTS) == ["gpt2-124M.pth"]
    model, config = three_lines(gpt_generate, saved)
    assert config == config_of(TINY) and biggest_difference(model, reference, 64) < 1e-4

    tokenizer = tiktoken.get_encoding("gpt2")
    ids = torch.tensor([tokenizer.encode("Every effort moves you")])
    theirs = reference.generate(ids, max_new_tokens=15, do_sample=False, pad_token_id=50256, use_cache=False)
    text = tokenizer.decode(theirs[0].tolist())
    assert f"贪心解码写的：{text}" in out
    code, out, _ = call(gpt_generate, "--size", "124M", "--max-new-tokens", 15)
    assert code == 0 and out.split("\n\n", 1)[1].startswith(text.split("<|endoftext|>")[0]) and str(saved) in out


def test_the_real_size(tmp_path, monkeypatch):
    """真正的 124M 大小，随机的权重：与 transformers 的 logits 相同，参数的个数与书上的相同，读文件不占内存。"""
    gpt_download = pretend("gpt_download.py", monkeypatch, tmp_path)
    settings = gpt_download.GPT2_SETTINGS["124M"]
    assert settings == {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12}  # 5-17
    theirs = make_reference(settings)
    path = tmp_path / "gpt2-124M.safetensors"
    save_file(weights_of(theirs), path)

    def private_memory():
        found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text()) if sys.platform == "linux" else None
        return int(found[1]) / 1024 if found else 0

    before = private_memory()
    tensors = gpt_download.read_tensors(path)
    params = gpt_download.nest_gpt2_params(tensors, settings)
    assert private_memory() - before < 200  # MB；整个文件是 498 MB，检查 nan 时临时要一点
    assert sorted(params) == ["b", "blocks", "g", "wpe", "wte"] and len(params["blocks"]) == 12
    assert params["wte"].shape == (50257, 768) and params["blocks"][11]["attn"]["c_attn"]["w"].shape == (768, 2304)
    model, config = gpt_download.build_gpt(tensors, settings, path)
    assert sum(p.numel() for p in model.parameters()) == 163_037_184  # 163,009,536 加上 Q、K、V 的偏置 12·3·768
    assert config == config_of(settings) and biggest_difference(model, theirs, 12) < 1e-4


def test_params_feed_the_reference_loader(gpt_download, reference):
    """params 的结构与原书的相同：原书作者的 load_weights_into_gpt 读它，得到同样的模型。"""
    theirs = pytest.importorskip("llms_from_scratch.ch05", reason="没有装 llms-from-scratch，无法与它比较")
    from llms_from_scratch.ch04 import GPTModel

    params = gpt_download.nest_gpt2_params(weights_of(reference), TINY)
    models = [gpt_download.GPTModel(config_of(TINY)), GPTModel(config_of(TINY))]
    gpt_download.load_weights_into_gpt(models[0], params)
    theirs.load_weights_into_gpt(models[1], params)
    ours, other = (dict(model.named_parameters()) for model in models)
    assert ours.keys() == other.keys() and all(torch.equal(ours[name], other[name]) for name in ours)


@pytest.mark.parametrize(("size", "parameters"), [("124M", 124_439_808), ("355M", 354_823_168), ("774M", 774_030_080), ("1558M", 1_557_611_200)])
def test_sizes(size, parameters):
    """四种规模，数出来正是公开的参数个数。"""
    module = load(MAIN / "gpt_download.py")
    settings = module.GPT2_SETTINGS[size]
    assert sum(np.prod(shape) for shape in module.gpt2_shapes(settings).values()) == parameters
    assert settings["n_embd"] // settings["n_head"] == 64
    assert load(ROOT / "setup" / "download.py").ITEMS[f"gpt2-{size}"].file == f"gpt2-{size}.safetensors"  # 下载的正是要读的


# ── 本项目的名字：原书发布的、自己微调的 ──


def book_model(context_length=64, qkv_bias=True):
    from llms_from_scratch.ch04 import GPTModel

    torch.manual_seed(3)
    return GPTModel(config_of(TINY) | {"context_length": context_length, "qkv_bias": qkv_bias}).eval()


@pytest.mark.parametrize("kind", ["pth", "safetensors", "连优化器", "编译过的", "多卡的", "先套 DDP 再编译", "编译了再套 DDP", "只编译一块", "半精度", "权重共享"])
def test_state_dict_of_the_book(gpt_download, gpt_generate, tmp_path, call, capsys, kind):
    """原书发布的 .pth 和 .safetensors（掩码是浮点数）；torch.compile、DDP 存的；没有 out_head 的。都转成同一种格式，改了什么都说出来。"""
    pytest.importorskip("llms_from_scratch.ch04", reason="没有装 llms-from-scratch，无法与它比较")
    book = book_model()
    if kind == "半精度":
        book = book.bfloat16()
    state = {name: value.clone() for name, value in book.state_dict().items()}
    if kind == "权重共享":
        del state["out_head.weight"]
        book.out_head.weight = book.tok_emb.weight
    prefix = {"编译过的": "_orig_mod.", "多卡的": "module.", "先套 DDP 再编译": "_orig_mod.module.", "编译了再套 DDP": "module._orig_mod."}.get(kind, "")
    state = {prefix + name: value for name, value in state.items()}
    if kind == "只编译一块":
        state = {name.replace("trf_blocks.1.", "trf_blocks.1._orig_mod."): value for name, value in state.items()}
    path = tmp_path / ("book.safetensors" if kind in ("safetensors", "半精度") else "book.pth")
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        contents = {"连优化器": {"model_state_dict": state, "optimizer_state_dict": {}}, "编译过的": {"config": config_of(TINY), "model": state}}
        torch.save(contents.get(kind, state), path)
    code, out, err = call(gpt_download, "--from-file", path) if kind == "权重共享" else (0, "", "")
    if kind != "权重共享":  # 输出层本来就与词嵌入不同：那一条自查会是 ✗，所以不走 call
        gpt, config = gpt_download.build_gpt(gpt_download.read_tensors(path), TINY, path)
        torch.save({"config": config, "model": gpt.state_dict()}, gpt_download.OUTPUTS / "gpt2-124M.pth")
    assert code == 0, err
    said = out + capsys.readouterr().out
    removed = sorted(set(re.findall(r"(?:_orig_mod|module)\.", "".join(state))))
    assert ("去掉了" in said) == bool(removed) and f"多出来的 {'、'.join(removed)} 去掉了" * bool(removed) in said
    assert ("没有输出层" in said) == (kind == "权重共享")
    model, _ = three_lines(gpt_generate, gpt_download.OUTPUTS / "gpt2-124M.pth")
    ids = torch.randint(50257, (2, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(model.eval()(ids), book.float()(ids), atol=1e-5)


def test_other_models_of_the_book_are_refused(gpt_download, tmp_path, call):
    """5.2 节那种（不带偏置、上下文短）和第 6 章换成 2 类的，都不是 OpenAI 的规模：说清哪里不同。"""
    pytest.importorskip("llms_from_scratch.ch04", reason="没有装 llms-from-scratch，无法与它比较")
    states = {"少了 trf_blocks.0.att.W_query.bias": book_model(qkv_bias=False).state_dict(), "pos_emb.weight 的形状是 (16, 32)，应是 (64, 32)": book_model(16).state_dict()}
    states["out_head.weight 的形状是 (2, 32)"] = dict(book_model().state_dict()) | {"out_head.weight": torch.zeros(2, 32)}
    for words, state in states.items():
        torch.save(state, tmp_path / "other.pth")
        assert words in call(gpt_download, "--from-file", tmp_path / "other.pth")[2]


def test_masks_are_the_models_own(gpt_download, tmp_path):
    """文件里的掩码坏了（全 0，看得到未来）也不要紧：掩码用模型自己的。"""
    torch.manual_seed(0)
    state = gpt_download.GPTModel(config_of(TINY)).state_dict()
    torch.save({name: value for name, value in state.items() if "mask" not in name}, tmp_path / "without.pth")
    torch.save({name: torch.zeros(64, 64) if "mask" in name else value for name, value in state.items()}, tmp_path / "broken.pth")
    ids = torch.randint(50257, (1, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        first, second = (convert(gpt_download, tmp_path / name).eval()(ids) for name in ("without.pth", "broken.pth"))
    assert torch.equal(first, second)


# ── 坏文件 ──


def bad_files(reference, folder):
    """名字 → 文件内容怎么坏。"""
    good = weights_of(reference)
    w = "h.1.attn.c_attn.weight"
    nan, inf = good[w].clone(), good["wpe.weight"].clone()
    nan[3, 4], inf[0, 0] = torch.nan, -torch.inf
    files = {
        "少一项": {name: value for name, value in good.items() if name != w},
        "少 wpe": {name: value for name, value in good.items() if name != "wpe.weight"},
        "多一项": good | {"score.weight": torch.zeros(2, 32)},
        "转置过": good | {w: good[w].T.contiguous()},
        "少一行": good | {"ln_f.bias": torch.zeros(31)},
        "维数不对": good | {"wte.weight": torch.zeros(50257)},
        "整数": good | {w: torch.zeros(good[w].shape, dtype=torch.int8)},
        "有 nan": good | {w: nan},
        "有 inf": good | {"wpe.weight": inf},
        "词表变大": good | {"wte.weight": torch.zeros(50258, 32)},
        "多一层": good | {name.replace("h.0.", "h.3."): value.clone() for name, value in good.items() if name.startswith("h.0.")},
        "输出层不共享": good | {"lm_head.weight": torch.ones(50257, 32)},
        "别的规模": weights_of(make_reference(SECOND)),
        "别的模型": {"bert.embeddings.word_embeddings.weight": torch.zeros(9, 9)},
        "一项也没有": {},
    }  # fmt: skip
    for name, content in files.items():
        save_file(content, folder / f"{name}.safetensors")
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
        (folder / f"{name}.safetensors").write_bytes(content)
    return [folder / f"{name}.safetensors" for name in [*files, *raw]]


def test_bad_files_are_refused(gpt_download, reference, tmp_path, call):
    """一句中文，写明是哪个文件；以前转换好的还在，也没有写了一半的。"""
    old = gpt_download.OUTPUTS / "gpt2-124M.pth"
    old.write_bytes(b"old")
    said = {}
    for path in bad_files(reference, tmp_path):
        code, _, err = call(gpt_download, "--from-file", path)
        assert code == 2 and str(path) in err, path.name
        said[path.stem] = err
    assert list(gpt_download.OUTPUTS.iterdir()) == [old] and old.read_bytes() == b"old"
    messages = {"少一项": "少了 h.1.attn.c_attn.weight", "多一项": "多出 score.weight", "转置过": "(96, 32)，应是 (32, 96)", "整数": "h.1.attn.c_attn.weight 有 nan、inf，或不是浮点数",
                "有 nan": "h.1.attn.c_attn.weight 有 nan", "有 inf": "wpe.weight 有 nan", "别的规模": "它是 355M 的，请加 --size 355M", "多一层": "多出 h.3.",
                "截断": "--verify", "网页": "不是权重文件", "别的模型": "少了 wte.weight", "输出层不共享": "不是同一个矩阵"}  # fmt: skip
    for name, words in messages.items():
        assert words in said[name], (name, said[name])
    assert call(gpt_download, "--from-file", tmp_path / "别的规模.safetensors", "--size", "355M")[0] == 0  # 说对了规模，它就是好的


def test_disk_full_keeps_the_old_file(gpt_download, reference, tmp_path, monkeypatch, call):
    """写到一半磁盘满了：旧的还在，半个文件不留下。"""
    old = gpt_download.OUTPUTS / "gpt2-124M.pth"
    old.write_bytes(b"old")
    save_file(weights_of(reference), tmp_path / "hub.safetensors")

    def full(content, file):
        file.write(b"half")
        raise OSError("磁盘满了")

    monkeypatch.setattr(gpt_download.torch, "save", full)
    assert "磁盘满了" in call(gpt_download, "--from-file", tmp_path / "hub.safetensors")[2]
    assert list(gpt_download.OUTPUTS.iterdir()) == [old] and old.read_bytes() == b"old"


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
    for path in (tmp_path / "model.safetensors", tmp_path / "model.pth"):
        for write in [lambda path: path.write_bytes(pickle.dumps(trap)), *(lambda path, content=content: torch.save(content, path) for content in contents)]:
            write(path)
            assert call(gpt_generate, "--from-file", path)[0] == 2
            assert call(gpt_download, "--from-file", path)[0] == 2
            assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(trap))
    assert (tmp_path / "executed").exists()  # 陷阱本身是好的


def test_strange_dictionaries(gpt_download, gpt_generate, tmp_path, call):
    """能读出来、但不是权重的 .pth：两个脚本都是一句中文。"""
    state = gpt_generate.GPTModel(config_of(TINY)).state_dict()
    config = config_of(TINY)
    both = [{}, [], 5, {"tok_emb.weight": 5}, {"tok_emb.weight": torch.zeros(())}, {1: torch.zeros(2)}, {"model_state_dict": [1]}, {"model_state_dict": {}}]
    both += [{name: value for name, value in state.items() if part not in name} for part in ("pos_emb", "W_key")]
    both += [state | {"extra": torch.zeros(1)}, state | {"pos_emb.weight": torch.zeros(())}, {"config": 1, "model": 2}, {"config": {}, "model": {}}]
    # 只有 gpt_generate 看文件里的配置
    wrong = ({}, [4], 1, config | {"n_layers": 2}, *(config | {"n_heads": heads} for heads in (0, 5, "四")))
    for number, content in enumerate(both + [{"config": config, "model": state} for config in wrong]):
        torch.save(content, tmp_path / "strange.pth")
        assert call(gpt_generate, "--from-file", tmp_path / "strange.pth")[0] == 2, number
        if number < len(both):
            assert call(gpt_download, "--from-file", tmp_path / "strange.pth")[0] == 2, number


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_generate_names_the_bad_tensor(gpt_generate, tmp_path, call, bad):
    """权重里有一个 nan 或 inf：不写出一堆胡话，一句中文说出是哪个文件、哪个张量；没有它，照常写。"""
    path, name = tmp_path / "model.pth", "trf_blocks.1.ff.layers.0.weight"
    torch.manual_seed(0)
    state = gpt_generate.GPTModel(config_of(TINY)).state_dict()
    torch.save({"config": config_of(TINY), "model": state}, path)
    assert call(gpt_generate, "--from-file", path, "--max-new-tokens", 2)[0] == 0
    state[name][3, 4] = bad
    torch.save({"config": config_of(TINY), "model": state}, path)
    code, _, err = call(gpt_generate, "--from-file", path, "--max-new-tokens", 2)
    assert code == 2 and f"{path} 里的 {name} 有 nan 或 inf" in err


def test_damaged_bytes(gpt_download, tmp_path):
    """截断、改几个字节、换掉一段，两百种：要么读得出来，要么是一句中文的 ValueError，别无其他。"""
    state, rng, refused = gpt_download.GPTModel(config_of(TINY)).state_dict(), random.Random(3), 0
    paths = [tmp_path / "x.pth", tmp_path / "x.safetensors"]
    torch.save({"config": config_of(TINY), "model": state}, paths[0])
    save_file(dict(state), paths[1])
    files = [path.read_bytes() for path in paths]
    for trial in range(200):
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
        paths[trial % 2].write_bytes(data)
        try:
            assert len(convert(gpt_download, paths[trial % 2]).trf_blocks) == 3
        except ValueError as error:
            refused += 1
            assert re.search("[\u4e00-\u9fff]", str(error))
    assert refused > 120


# ── 用哪个文件、内存 ──


def test_where_the_weights_are_looked_for(gpt_download, reference, tmp_path, monkeypatch, call):
    """没有就说先下载；setup/downloads 里有就用它，LLM_DATA_DIR 里的优先，--from-file 说了算。"""
    code, _, err = call(gpt_download)
    assert code == 2 and err.startswith("找不到 gpt2-124M.safetensors，请先运行 python setup/download.py")
    monkeypatch.setenv("LLM_DATA_DIR", str(tmp_path / "mine"))
    for folder in (tmp_path / "setup" / "downloads", tmp_path / "mine"):
        folder.mkdir()
        save_file(weights_of(reference), folder / "gpt2-124M.safetensors")
        code, out, err = call(gpt_download)
        assert code == 0 and f"读了　{folder / 'gpt2-124M.safetensors'}" in out, err
    shutil.move(tmp_path / "mine" / "gpt2-124M.safetensors", tmp_path / "given.safetensors")
    assert f"读了　{tmp_path / 'given.safetensors'}" in call(gpt_download, "--from-file", tmp_path / "given.safetensors")[1]


def test_which_file_is_used(gpt_generate, tmp_path, call):
    """mini 是自己训练的，其余是转换好的，--from-file 说了算；没有的，说先运行什么。"""
    assert "请先运行 python ch05/main/gpt_train.py" in call(gpt_generate)[2]
    for size in ("124M", "355M"):
        code, _, err = call(gpt_generate, "--size", size)
        assert code == 2 and f"请先运行 python ch05/main/gpt_download.py --size {size}" in err
    outputs = tmp_path / "ch05" / "outputs"
    outputs.mkdir(parents=True)
    trained = {"config": config_of(TINY), "model": gpt_generate.GPTModel(config_of(TINY)).state_dict()}
    for name, args in {"gpt_mini.pth": [], "gpt2-124M.pth": ["--size", "124M"], "my.pth": ["--from-file", outputs / "my.pth"]}.items():
        torch.save(trained, outputs / name)
        code, out, _ = call(gpt_generate, "--max-new-tokens", 2, *args)
        assert code == 0 and f"模型　{outputs / name}\n" in out and out.count("✓") == 2
    assert "nosuch.pth" in call(gpt_generate, "--from-file", tmp_path / "nosuch.pth")[2]


def test_sampling_flags(gpt_generate, tmp_path, call):
    """温度、top-k、种子真的传到了 generate：与直接调用它写的相同。"""
    torch.manual_seed(0)
    model = gpt_generate.GPTModel(config_of(TINY)).eval()
    torch.save({"config": config_of(TINY), "model": model.state_dict()}, tmp_path / "x.pth")
    tokenizer, written = tiktoken.get_encoding("gpt2"), set()
    for args in (["--temperature", 1.5, "--top-k", 50], ["--temperature", 1.5, "--top-k", 50, "--seed", 1], ["--temperature", 1.5], []):
        code, out, _ = call(gpt_generate, "--from-file", tmp_path / "x.pth", "--prompt", "I had", *args)
        options = dict(zip(args[::2], args[1::2]))
        torch.manual_seed(options.get("--seed", 123))
        idx = torch.tensor([tokenizer.encode("I had")])
        ids = gpt_generate.generate(model, idx, 25, 64, options.get("--temperature", 0.0), options.get("--top-k"), eos_id=50256)
        written.add(tokenizer.decode(ids[0].tolist()))
        assert code == 0 and f"\n\n{tokenizer.decode(ids[0].tolist())}\n" in out
    assert len(written) == 4
    assert call(gpt_generate, "--from-file", tmp_path / "x.pth", "--prompt", "")[0] == 0  # 空的提示词：从头写一篇
    for args, words in ((["--top-k", 0], "top_k 应在 1 到 50257"), (["--temperature", -1], "温度不能是 -1.0"), (["--temperature", "nan"], "温度不能是 nan")):
        assert words in call(gpt_generate, "--from-file", tmp_path / "x.pth", *args)[2]


def test_memory_is_checked_first(gpt_download, reference, tmp_path, monkeypatch, call):
    save_file(weights_of(reference), tmp_path / "hub.safetensors")
    monkeypatch.setattr(gpt_download, "GPTModel", None)  # 建模型就会出错：说明还没建就拒绝了
    monkeypatch.setattr(gpt_download, "total_memory", lambda: 5.5)
    code, _, err = call(gpt_download, "--from-file", tmp_path / "hub.safetensors", "--size", "1558M")
    assert code == 2 and "1558M 约要 6.8 GB 内存，这台机器只有 5.5 GB" in err
    monkeypatch.undo()


@pytest.mark.parametrize("memory", [None, 1.0])
def test_enough_or_unknown_memory(gpt_download, reference, tmp_path, monkeypatch, call, memory):
    """够用，或不知道有多少内存（Windows），就往下走。"""
    save_file(weights_of(reference), tmp_path / "hub.safetensors")
    monkeypatch.setattr(gpt_download, "total_memory", lambda: memory)
    assert call(gpt_download, "--from-file", tmp_path / "hub.safetensors")[0] == 0


# ── 装权重的小函数 ──


def test_assign_and_mismatches(gpt_download, reference):
    left = torch.nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))
    new = gpt_download.assign(left, np.arange(6, dtype=np.float32).reshape(3, 2).T)
    assert isinstance(new, torch.nn.Parameter) and new.requires_grad and new.dtype == torch.float64 and new.tolist() == [[0, 2, 4], [1, 3, 5]]
    for wrong in (np.zeros((3, 2)), np.zeros(3), np.zeros((1, 3))):
        with pytest.raises(ValueError, match="形状不同"):
            gpt_download.assign(left, wrong)
    params = gpt_download.nest_gpt2_params(weights_of(reference), TINY)
    for change, words in {("qkv_bias", False): "qkv_bias=True", ("n_layers", 2): "3 块", ("context_length", 32): "形状不同", ("emb_dim", 48): "形状不同"}.items():
        with pytest.raises(ValueError, match=words):
            gpt_download.load_weights_into_gpt(gpt_download.GPTModel(config_of(TINY) | dict([change])), params)


def test_loaded_model_trains_untied(gpt_download, reference):
    """装好之后输出层与词嵌入相同，但是两份：训练一步，各改各的；权重数组不受影响。"""
    params = gpt_download.nest_gpt2_params(weights_of(reference), TINY)
    kept = params["wte"].copy()
    gpt = gpt_download.GPTModel(config_of(TINY))
    gpt_download.load_weights_into_gpt(gpt, params)
    assert torch.equal(gpt.out_head.weight, gpt.tok_emb.weight) and gpt.out_head.weight is not gpt.tok_emb.weight
    optimizer = torch.optim.SGD(gpt.parameters(), lr=1.0)
    ids = torch.tensor([[1, 2, 3, 4]])
    torch.nn.functional.cross_entropy(gpt(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
    optimizer.step()
    assert not torch.equal(gpt.out_head.weight, gpt.tok_emb.weight) and np.array_equal(params["wte"], kept)


def test_help_and_bad_arguments(gpt_download, gpt_generate, monkeypatch, capsys):
    for module in (gpt_download, gpt_generate):
        for case in (["--help"], ["--size", "117M"], ["--nosuch"], ["--size"]):
            monkeypatch.setattr(sys, "argv", [module.__name__, *case])
            with pytest.raises(SystemExit) as stopped:
                module.main()
            out, err = capsys.readouterr()
            assert stopped.value.code == (0 if case == ["--help"] else 2)
            assert ("默认" in out and "--size" in out and err == "") if case == ["--help"] else (out == "" and "error" in err)


# ── 逐步讲解 ──


@pytest.fixture
def project(tmp_path):
    """一个小项目：逐步讲解的一份拷贝，和分词器的词表。读者也许已经下载了权重，所以拷到别处运行。"""
    for folder in ("ch05/main", "setup/data", "setup/downloads"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copytree(VOCABULARY, tmp_path / "setup" / "downloads" / "tiktoken")
    shutil.copy(MAIN / "example_05_openai_weights.py", tmp_path / "ch05" / "main")
    return tmp_path


def run_walkthrough(project, change=lambda source: source):
    script = project / "ch05" / "main" / "example_05_openai_weights.py"
    script.write_text(change(script.read_text(encoding="utf-8")), encoding="utf-8")
    env = {key: value for key, value in os.environ.items() if key != "LLM_DATA_DIR"} | {"PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, script], env=env, cwd=project, capture_output=True, encoding="utf-8", timeout=300)
    assert result.returncode == 0 and result.stderr == "", result.stdout + result.stderr
    return result.stdout


def test_walkthrough_without_weights(project):
    """没有真正的权重：造一个小文件走完全程；装对了的误差极小，五种装错法都看得出来；存下的文件三行读得回来。"""
    out = run_walkthrough(project)
    assert "✗" not in out and out.count("✓") == 8, out
    assert "（随机的数）" in out and "wte (50257, 768)，开头 -0.11010301 -0.03926672 0.03310751" in out
    assert float(re.search(r"logits 最多差 ([\d.e+-]+)", out)[1]) < 1e-4
    wrong = [float(number) for number in re.findall(r"^ +(\d+\.\d{3})　", out, re.MULTILINE)]
    assert len(wrong) == 5 and min(wrong) > 0.1
    stored, total, more = (int(number.replace(",", "")) for number in re.search(r"文件里 ([\d,]+) 个数；我们的模型 ([\d,]+) 个，多出的 ([\d,]+) 个", out).groups())
    assert total - stored == more == 50257 * 48
    assert sorted(os.listdir(project / "ch05" / "outputs")) == ["gpt2-random.pth", "gpt2-random.safetensors"]
    three_lines(load(MAIN / "gpt_generate.py"), project / "ch05" / "outputs" / "gpt2-random.pth")


def test_walkthrough_with_weights(project, reference):
    """有 gpt2-124M.safetensors 就用它（这里缩成极小的规模），存成 gpt2-124M.pth；不是 OpenAI 的那份，就不与书比。"""
    save_file(weights_of(reference, masks=False) | {f"h.{layer}.attn.bias": torch.ones(64, 64).tril() for layer in range(3)}, project / "setup" / "downloads" / "gpt2-124M.safetensors")
    right = '"124M": {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12}'
    out = run_walkthrough(project, lambda source: source.replace(right, f'"124M": {TINY}'))
    assert "✗" not in out and out.count("✓") == 8 and "（随机的数）" not in out and "'n_layer': 3" in out, out
    model, _ = three_lines(load(MAIN / "gpt_generate.py"), project / "ch05" / "outputs" / "gpt2-124M.pth")
    assert biggest_difference(model, reference, 64) < 1e-4


def test_try_zeros(project):
    """「动手改」第 1 条：随机的数全换成 0，五种装错法就都看不出来，那一条自查变成 ✗。"""
    out = run_walkthrough(project, lambda source: source.replace("0.1 * torch.randn(shape)", "torch.zeros(shape)"))
    assert "✗ 五种装错法，每一种都看得出来" in out and out.count("✗") == 1


def test_by_hand_equals_transformers(reference):
    """讲解里"照 OpenAI 的写法"的那个函数，本身也与 transformers 相同：拿它当证据才站得住。"""
    nest, by_hand = walkthrough("nest_gpt2_params", "gpt2_by_hand")
    ids = torch.randint(50257, (64,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        difference = by_hand(ids, nest(weights_of(reference), TINY), TINY["n_head"]) - reference(ids[None]).logits[0]
    assert difference.abs().max() < 1e-4


@pytest.mark.skipif(not OFFICIAL.is_file(), reason="没有 OpenAI 的 124M 权重：请把 gpt2-124M.safetensors 放进 LLM_DATA_DIR 指的文件夹")
def test_official_weights(project, monkeypatch, call):
    """真正的权重：书上 5-17、5-18、5-19 的数。"""
    (project / "setup" / "downloads" / OFFICIAL.name).symlink_to(OFFICIAL)
    out = run_walkthrough(project)
    assert "✗" not in out and "✓ 写的与原书 5.5 节一字不差" in out and "✓ wte 的开头与原书相同" in out
    code, out, _ = call(pretend("gpt_generate.py", monkeypatch, project), "--size", "124M", "--temperature", 1.5, "--top-k", 50)
    assert code == 0 and "✓ 与原书 5.5 节写的一字不差" in out
    module = pretend("gpt_download.py", monkeypatch, project)
    module.OUTPUTS = project / "ch05" / "outputs"
    assert "✓ 写的与原书 6.4 节一字不差" in call(module)[1]
