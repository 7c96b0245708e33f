"""exp_load_weights：六种写法装出来的都对、装错了看得出来；自己的内存分得清；弄坏了测试就变红；--quick、坏参数、坏文件。

运行：python -m pytest ch05/tests/test_load_weights.py
"""

import importlib.util
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "exp_load_weights.py"
SMALL = {"vocab_size": 50, "context_length": 40, "emb_dim": 16, "n_heads": 2, "n_layers": 2, "drop_rate": 0.0, "qkv_bias": True}


def load(path=SCRIPT, name="exp_load_weights"):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ns():
    return load()


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """一份小的权重，不用被测的脚本来写。"""
    global FOLDER, STATE
    FOLDER = tmp_path_factory.mktemp("weights")
    torch.manual_seed(7)
    STATE = load().GPTModel(SMALL).state_dict()
    torch.save({"config": SMALL, "model": STATE}, FOLDER / "weights.pth")
    save_file(STATE, FOLDER / "weights.safetensors")
    return FOLDER


def loads(ns, way):
    torch.manual_seed(0)
    model, _ = ns.WAYS[way](SMALL, FOLDER)
    ours = model.state_dict()
    same = ours.keys() == STATE.keys() and all(torch.equal(ours[name], STATE[name]) for name in STATE)
    out = model.eval()(torch.arange(9)[None])
    return same and not any(p.is_meta for p in model.parameters()) and all(p.requires_grad for p in model.parameters()) and out.shape == (1, 9, 50)


# ---- 每条检查返回成立吗；弄坏代码之后，它必须不成立 ----


def plain_loads(ns):
    return loads(ns, "书上的写法")


def mapped_loads(ns):
    return loads(ns, "mmap")


def meta_loads(ns):
    return loads(ns, "meta") and loads(ns, "meta + mmap")


def safetensors_loads(ns):
    return loads(ns, "meta + safetensors")


def layers_load(ns):
    return loads(ns, "一层一层地抄")


def other_names_are_refused(ns):
    """名字多了、少了，自己抄的也要拒绝，不能悄悄漏掉。"""
    for change in ("少", "多"):
        state = dict(STATE)
        if change == "少":
            del state["out_head.weight"]
        else:
            state["extra"] = torch.zeros(1)
        place = FOLDER / change
        place.mkdir(exist_ok=True)
        save_file(state, place / "weights.safetensors")
        try:
            ns.by_layer(SMALL, place)
            return False
        except ValueError as error:
            if "名字与模型的不同" not in str(error):
                return False
    return True


def own_is_own(ns):
    """开一个 64 MB 的张量，自己的内存多 64 MB；映射一个 64 MB 的文件再读一遍，自己的不多，总的多 64 MB。"""
    if ns.own_memory() is None:
        pytest.skip("不是 Linux，量不了")
    before = ns.own_memory()
    kept = torch.frombuffer(mmap.mmap(-1, 2**26, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=torch.float32).fill_(1)  # 不经过分配器：它也许拿用过的地方给我们
    grown = ns.own_memory() - before
    path = FOLDER / "file.pth"
    torch.save(kept, path)
    before, total = ns.own_memory(), ns.own_memory("VmRSS")
    mapped = torch.load(path, mmap=True, weights_only=True)
    mapped.sum()
    return 60 < grown < 70 and ns.own_memory() - before < 8 and 56 < ns.own_memory("VmRSS") - total < 72


def digest_sees_everything(ns):
    """32 个词元用得到的每个参数，改一点，摘要就变。"""
    torch.manual_seed(1)
    model = ns.GPTModel(SMALL)
    seen, first = set(), ns.look(model)
    if ns.look(model) != first:
        return False
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "W_key.bias" in name:  # 键的偏置给每个分数加上同一个数，softmax 之后本来就不变
                continue
            p[-1 if p.dim() == 1 else 0].add_(0.5)
            seen.add(ns.look(model))
            p[-1 if p.dim() == 1 else 0].sub_(0.5)
    return len(seen) == len(list(model.named_parameters())) - 2 and first not in seen


CHECKS = [plain_loads, mapped_loads, meta_loads, safetensors_loads, layers_load, other_names_are_refused, own_is_own, digest_sees_everything]
BROKEN = [
    (plain_loads, '["model"]\n    model.load_state_dict(state)\n    return model, state\n\n\ndef mapped', '["model"]\n    return model, state\n\n\ndef mapped'),
    (mapped_loads, '["model"]\n    model.load_state_dict(state)\n    return model, state\n\n\ndef meta', '["model"]\n    return model, state\n\n\ndef meta'),
    (mapped_loads, '"weights.pth", weights_only=True, mmap=True)["model"]', '"weights.pth", weights_only=True, mmap=True)'),
    (meta_loads, "    model.load_state_dict(state, assign=True)\n    return model, state\n\n\ndef safetensors", "    model.load_state_dict(state)\n    return model, state\n\n\ndef safetensors"),
    (meta_loads, "    model.load_state_dict(state, assign=True)\n    return model, state\n\n\ndef safetensors", "    model.to_empty(device='cpu')\n    return model, state\n\n\ndef safetensors"),
    (safetensors_loads, "    model.load_state_dict(state, assign=True)\n    return model, state\n\n\ndef by_layer", "    model.load_state_dict(state)\n    return model, state\n\n\ndef by_layer"),
    (layers_load, "target.copy_(weights.get_tensor(name))", "target.add_(weights.get_tensor(name))"),
    (layers_load, "target.copy_(weights.get_tensor(name))", "target = weights.get_tensor(name)"),
    (layers_load, "targets = model.state_dict()", "targets = {name: tensor.clone() for name, tensor in model.state_dict().items()}"),
    (other_names_are_refused, "if set(weights.keys()) != set(targets):", "if set(weights.keys()) < set(targets):"),
    (other_names_are_refused, "if set(weights.keys()) != set(targets):", "if set(weights.keys()) > set(targets):"),
    (own_is_own, 'own_memory(field="RssAnon")', 'own_memory(field="VmRSS")'),
    (own_is_own, 'own_memory(field="RssAnon")', 'own_memory(field="VmHWM")'),
    (digest_sees_everything, "torch.arange(32)[None]", "torch.zeros(1, 1, dtype=torch.long)"),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_right(ns, check):
    assert check(ns)


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta")  # 弄坏的就是它
@pytest.mark.parametrize("check, old, new", BROKEN, ids=lambda value: value.__name__ if callable(value) else "")
def test_broken_is_seen(check, old, new, tmp_path):
    """把那一处改坏，检查就不成立（或出错）：检查不是摆设。"""
    document, start, code = SCRIPT.read_text(encoding="utf-8").partition("\nimport argparse\n")  # 文档的「动手改」里也写着这些
    assert code.count(old) == 1, old
    path = tmp_path / "broken.py"
    path.write_text(document + start + code.replace(old, new), encoding="utf-8")
    try:
        assert not check(load(path, "broken"))
    except Exception as error:  # 装错了，各种异常都有可能；断言不成立的不算
        assert not isinstance(error, AssertionError)


# ---- 零碎 ----


def test_traps(ns, tmp_path):
    found = ns.traps(tmp_path)
    assert len(found) == 4 and all(found.values())


def test_memory_in_a_fresh_process(ns, tmp_path):
    """新的进程里量：书上的写法两份，meta 加映射几乎没有。"""
    if ns.own_memory() is None:
        pytest.skip("不是 Linux，量不了")
    weights, digest = ns.write_weights("tiny", tmp_path)
    twice, none = (ns.fresh("--measure", way, "--size", "tiny", "--folder", tmp_path) for way in ("书上的写法", "meta + mmap"))
    assert twice["digest"] == none["digest"] == digest
    assert 1.8 < twice["own"] / weights < 2.3 and none["own"] / weights < 0.3


def test_no_space(ns, tmp_path):
    with pytest.raises(OSError, match="写不进"):
        ns.write_weights("tiny", tmp_path / "没有这个文件夹")


def run(*arguments, script=SCRIPT):
    return subprocess.run([sys.executable, str(script), *map(str, arguments)], capture_output=True, encoding="utf-8", env=os.environ | {"PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"})


def test_quick(tmp_path):
    """--quick 走完；临时的权重删干净了，只留下图片。"""
    script = tmp_path / "ch05" / "experiments" / SCRIPT.name
    script.parent.mkdir(parents=True)
    script.write_text(SCRIPT.read_text(encoding="utf-8"), encoding="utf-8")
    result = run("--quick", script=script)
    assert result.returncode == 0 and "看流程，不下结论" in result.stdout and result.stdout.count("✓") == 5 and "✗" not in result.stdout, result.stdout + result.stderr
    assert [path.name for path in (tmp_path / "ch05" / "outputs").iterdir()] == ["load_weights_quick.png"]


def test_a_fresh_process_that_stops(ns, tmp_path):
    with pytest.raises(OSError, match="中途停了"):
        ns.fresh("--measure", "mmap", "--size", "tiny", "--folder", tmp_path)
