"""测试第 4 章：书上的数字、与两个独立实现（llms-from-scratch、transformers）的一致、用错时的报错。

1.24 亿参数的模型整个文件只建五次：gpt.py、example_06、example_07 各一次，参考实现一次，故意多留一个 Dropout 一次。
"""

import contextlib
import functools
import importlib.util
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from once import once

MAIN = Path(__file__).resolve().parents[1] / "main"
PICTURE = MAIN.parent / "outputs" / "gelu_relu.png"
TINY = {"vocab_size": 97, "context_length": 16, "emb_dim": 32, "n_heads": 4, "n_layers": 3, "drop_rate": 0.1, "qkv_bias": True}


def load(name):
    """按路径导入一个脚本；逐步讲解的脚本会整个跑一遍，打印的东西存在 printed 里。"""
    spec = importlib.util.spec_from_file_location(name, MAIN / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        spec.loader.exec_module(module)
    module.printed = printed.getvalue()
    return module


gpt = load("gpt")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """只用一个线程：几个测试一起跑时，线程互相抢 CPU 反而慢好几倍。"""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run_path(path, *arguments):
    """在别的文件夹里运行一个脚本；返回 (退出码, stdout, stderr)，stdout 里连续的空白合成一个空格。"""
    env = os.environ | {"PYTHONUTF8": "1", "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(path), *arguments], capture_output=True, cwd=Path(__file__).anchor, env=env, encoding="utf-8", timeout=900)
    return done.returncode, re.sub(r"\s+", " ", done.stdout), done.stderr


@functools.cache
def run(name, *arguments):
    """运行 main/ 里的一个脚本，每个只真正跑一次；返回的与 run_path 相同。"""
    done = once(MAIN / f"{name}.py", *arguments)
    return done.returncode, re.sub(r"\s+", " ", done.stdout), done.stderr


@functools.cache
def walkthrough(name):
    """一个逐步讲解脚本打印的全部内容。example_06 在本进程里跑，好接着用它建好的模型。"""
    if name == "example_06_gpt_model":
        return re.sub(r"\s+", " ", full_model().printed)
    code, out, err = run(name)
    assert (code, err) == (0, "")
    return out


@functools.cache
def full_model():
    """example_06 跑完之后的模块，里面有建好的 124M 模型。"""
    return load("example_06_gpt_model")


@functools.cache
def reference_full_model():
    """参考实现的 124M 模型，和它建好之后第一次前向（训练模式）的 logits；种子与书上相同。"""
    reference = pytest.importorskip("llms_from_scratch.ch04", reason="没有安装 llms-from-scratch，无从对照")
    torch.manual_seed(123)
    model = reference.GPTModel(gpt.GPT_CONFIG_124M)
    with torch.no_grad():
        return model, model(full_model().batch)


@pytest.fixture
def reference():
    """参考实现：原书作者发布的 llms-from-scratch 包。"""
    return pytest.importorskip("llms_from_scratch.ch04", reason="没有安装 llms-from-scratch，无从对照")


def pair(reference, config, seed=0):
    """同一个种子建出我们的和参考的模型。"""
    torch.manual_seed(seed)
    ours = gpt.GPTModel(config)
    torch.manual_seed(seed)
    return ours, reference.GPTModel(config)


def ids(config, b=2, t=None, seed=1):
    """随机的词元编号，(b, t)。"""
    return torch.randint(config["vocab_size"], (b, t or config["context_length"]), generator=torch.Generator().manual_seed(seed))


def loss_and_gradients(model, batch):
    """用下一个词元预测的交叉熵求一次梯度；返回 (logits, 损失, {参数名: 梯度})。"""
    model.zero_grad(set_to_none=True)
    logits = model(batch[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return logits.detach(), loss.item(), gradients


def same_behaviour(ours, theirs, batch):
    """两个模型的 logits、损失、全部梯度、20 步贪心续写都相同。"""
    ours.eval()
    theirs.eval()
    (logits, loss, gradients), (logits2, loss2, gradients2) = loss_and_gradients(ours, batch), loss_and_gradients(theirs, batch)
    assert (logits - logits2).abs().max() <= 1e-5
    assert abs(loss - loss2) <= 1e-5
    assert gradients.keys() == gradients2.keys()
    assert max((gradients[name] - gradients2[name]).abs().max() for name in gradients) <= 1e-5
    context = ours.pos_emb.num_embeddings
    reference = pytest.importorskip("llms_from_scratch.ch04")
    start = batch[:1, :4]
    assert torch.equal(gpt.generate_text_simple(ours, start, 20, context), reference.generate_text_simple(theirs, start, 20, context))


# ---------- 书上的数字：按小节的次序打印 ----------

PRINTED = {
    "example_01_dummy_gpt": [
        *("【4.1】GPT_CONFIG_124M", "vocab_size 50257", "context_length 1024", "emb_dim 768", "n_heads 12", "n_layers 12", "drop_rate 0.1", "qkv_bias False"),
        *("[6109, 3626, 6100, 345]", "[6109, 1110, 6622, 257]"),  # 4-01
        *("logits", "(2, 4, 50257)", "训练模式（model.training = True）"),  # 4-02
        *("评估模式（model.training = False）", "[-1.1947, 0.1392, -0.8616]", "[-1.1947, 0.1392, -0.8616]"),  # 没有 dropout，所以各系统相同
    ],
    "example_02_layernorm": [
        *("【4.2】", "[0.2260, 0.3470, 0.0000, 0.2216, 0.0000, 0.0000]", "[0.2133, 0.2394, 0.0000, 0.5198, 0.3297, 0.0000]"),  # 4-03
        *("均值", "0.1324", "0.2170", "方差", "0.0231", "0.0398"),
        *("归一化之后", "[ 0.6159, 1.4126, -0.8719, 0.5872, -0.8719, -0.8719]", "[-0.0189, 0.1121, -1.0876, 1.5173, 0.5647, -1.0876]"),  # 4-04
        *("归一化之后的方差", "1.0000", "1.0000", "sci_mode=False", "0.0000", "0.0000"),
        *("LayerNorm(batch_example)", "0.0000", "0.0000", "1.0000", "1.0000"),  # 4-05
        *("LayerNorm(out)", "0.0000", "0.0000", "0.9995", "0.9997"),
    ],
    "example_03_feedforward": ["【4.3】", "emb_dim = 768", "(2, 3, 768)", "(2, 3, 3072)", "降维 (2, 3, 768)"],  # 4-06
    "example_04_shortcut": ["【4.4】", *[f"layers.{i}.0.weight" for i in range(5)] * 2, "后者是前者的 1,099 倍", "没有残差 25 倍 有残差 6 倍"],  # 4-07；数值在下面另查
    "example_05_transformer_block": ["【4.5】输入 (2, 4, 768)", "输出 (2, 4, 768)"],  # 4-09
    "example_06_gpt_model": [
        *("【4.6】输入 (2, 4)", "[6109, 3626, 6100, 345]", "logits (2, 4, 50257)", "tensor([[["),  # 4-10
        "模型里有 25 个 Dropout：drop_emb、trf_blocks.0.att.dropout、trf_blocks.0.drop_shortcut",
        *("参数总数 163,009,536", "tok_emb 的形状 (50257, 768)", "out_head 的形状 (50257, 768)"),  # 4-11、4-12
        *("124,412,160", "占内存 621.83 MB", "tok_emb 38,597,376", "trf_blocks 85,026,816"),  # 4-13、4-14
    ],
    "example_07_generate_text": [
        *("【4.7】", "编号 [15496, 11, 314, 716]", "输入形状 (1, 4)"),  # 4-15
        *("(1, 4, 50257)", "(1, 50257)", "27018 ' Feature'", "[[15496, 11, 314, 716, 27018]]"),
        *("[[15496, 11, 314, 716, 27018, 24086, 47843, 30961, 42348, 7267]]", "输出长度 10"),  # 4-16
        "Hello, I am Featureiman Byeswickattribute argue",
    ],
}


@pytest.mark.parametrize("name", PRINTED)
def test_walkthrough_prints_the_books_numbers_in_order(name):
    """每个数都在，而且按书上的次序出现。"""
    out, place = walkthrough(name), 0
    for expected in PRINTED[name]:
        found = out.find(expected, place)
        assert found >= 0, f"从第 {place} 个字符起找不到 {expected}：{out[place : place + 200]}"
        place = found + len(expected)


@pytest.mark.parametrize("name", PRINTED)
def test_walkthrough_self_check_passes(name):
    """结尾的自查有 ✓，没有 ✗。"""
    checks = walkthrough(name).split("这个数字对吗？")[-1]
    assert checks.count("✓") >= 3
    assert "✗" not in checks


def test_every_section_of_the_chapter_is_printed():
    """4.1 到 4.7 每一节都有地方打印。"""
    printed = "".join(walkthrough(name) for name in PRINTED)
    assert sorted(set(re.findall(r"【(4\.\d)】", printed))) == [f"4.{i}" for i in range(1, 8)]


def test_dummy_gpt_training_logits_are_near_the_books():
    """4-02：dropout 的位置因系统而异，所以只要求在附近。"""
    row = re.search(r"训练模式（.+?tensor\(\[\[(.+?)\]", walkthrough("example_01_dummy_gpt")).group(1)
    assert [float(v) for v in row.split(",")] == pytest.approx([-1.2034, 0.3201, -0.7130], abs=0.8)


def test_normalized_means_are_zero():
    """4-04、4-05：均值是 0，允许 float32 的零头。"""
    out = walkthrough("example_02_layernorm")
    shown = re.findall(r"归一化之后的均值 \(b, 1\) tensor\(\[\[ *(\S+)\], \[ *(\S+?)\]\]", out)
    shown += re.findall(r"的均值和方差 tensor\(\[\[ *(\S+)\], \[ *(\S+?)\]\]", out)
    assert len(shown) == 3
    assert all(abs(float(value)) < 1e-6 for pair in shown for value in pair)


def test_gradients_with_and_without_shortcut():
    """4-07 和它的后一半：算出来的与书上打印的完整数字相差不到百万分之一，印出来的是它们的前 8 位小数。"""
    module = load("example_04_shortcut")
    without = [2.0173587836325169e-4, 1.2011159560643137e-4, 7.152039906941354e-4, 1.3988736318424344e-3, 5.049645435065031e-3]
    with_shortcut = [0.22169792652130127, 0.20694105327129364, 0.32896995544433594, 0.2665732502937317, 1.3258541822433472]
    assert module.without + module.with_shortcut == pytest.approx(without + with_shortcut, rel=1e-6)
    shown = [float(v) for v in re.findall(r"layers\.\d\.0\.weight 的平均梯度 (\S+)", walkthrough("example_04_shortcut"))]
    assert shown == pytest.approx(without + with_shortcut, rel=1e-6, abs=6e-9)


def test_picture_is_written():
    """GELU 的图是这次运行新写的，而且真是一张 PNG。"""
    out = walkthrough("example_03_feedforward")
    assert PICTURE.stat().st_mtime >= once(MAIN / "example_03_feedforward.py").started - 1
    data = PICTURE.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) > 20_000
    assert float(re.search(r"近似与精确最多相差 (\S+?)，", out).group(1)) == pytest.approx(4.73e-4, abs=1e-6)


def test_summary_script_from_another_folder():
    """gpt.py：14 个编号与书上逐个相同，别的文件夹里也能跑。"""
    code, out, err = run("gpt")
    assert (code, err) == (0, "")
    assert "[15496, 11, 314, 716, 27018, 24086, 47843, 30961, 42348, 7267, 49706, 43231, 47062, 34657]" in out
    assert "Hello, I am Featureiman Byeswickattribute argue logger Normandy Compton analogous" in out
    assert "163,009,536" in out and "124,412,160" in out and "621.83 MB" in out
    assert out.count("✓") == 3 and "✗" not in out


# ---------- 故意写错，自查要发现 ----------


def broken(tmp_path, name, right, wrong):
    """把一个脚本里的一段换成错的，再跑一遍；返回打 ✗ 的各条，和全部输出。"""
    text = (MAIN / f"{name}.py").read_text(encoding="utf-8")
    assert right in text
    path = tmp_path / "main" / f"{name}.py"  # 图片写到它上一级的 outputs
    path.parent.mkdir()
    path.write_text(text.replace(right, wrong), encoding="utf-8")
    code, out, err = run_path(path)
    assert code == 0, err
    return re.findall(r"✗ (.+?) 常见原因", out), out


LAST_LINEAR = 'nn.Linear(4 * cfg["emb_dim"], cfg["emb_dim"]),\n'
ONE_DROPOUT_TOO_MANY = LAST_LINEAR + '            nn.Dropout(cfg["drop_rate"]),\n'


def test_number_of_dropouts():
    """词嵌入之后 1 个，每个块 2 个，名字也对；前馈网络里一个也没有。"""
    model = gpt.GPTModel(TINY)
    found = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)]
    assert found == ["drop_emb", *[f"trf_blocks.{i}.{name}" for i in range(3) for name in ("att.dropout", "drop_shortcut")]]


def test_a_dropout_left_in_feedforward_is_noticed(tmp_path, monkeypatch):
    """FeedForward 末尾多留一个 Dropout：参数、形状、生成的文字都不变，只有数 Dropout 的那条自查发现它。"""
    monkeypatch.setenv("LLM_DATA_DIR", str(gpt.find_data("tiktoken").parent))  # 临时文件夹里的脚本也找得到词表
    failed, out = broken(tmp_path, "example_06_gpt_model", LAST_LINEAR, ONE_DROPOUT_TOO_MANY)
    assert len(failed) == 1 and failed[0].startswith("模型里正好有 25 个 Dropout")
    assert "模型里有 37 个 Dropout" in out


def test_another_size_is_not_compared_with_the_books_numbers(tmp_path, monkeypatch):
    """动手改：换了层数，印的是新的数，没有一条自查因此变成 ✗。"""
    monkeypatch.setenv("LLM_DATA_DIR", str(gpt.find_data("tiktoken").parent))
    failed, out = broken(tmp_path, "example_06_gpt_model", '"n_layers": 12', '"n_layers": 2')
    assert failed == [] and "163,009,536" not in out.split("】")[-1]
    assert "参数总数 92,153,856" in out and "约 54M" in out


@pytest.mark.parametrize("name, right, wrong, noticed", [
    ("example_03_feedforward", LAST_LINEAR, LAST_LINEAR + "            nn.Dropout(0.1),\n", "前馈网络只有三层"),
    ("example_02_layernorm", "unbiased=False)  # (…, 1)", "unbiased=True)  # (…, 1)", "与 PyTorch 自带的 nn.LayerNorm 相同"),
    ("example_04_shortcut", "torch.manual_seed(123)\nmodel_with", "model_with", "两个网络的权重逐位相同"),
    ("example_05_transformer_block", "        shortcut = x\n        x = self.norm1(x)", "        x = self.norm1(x)\n        shortcut = x", "一步一步算的"),
], ids=["前馈多一个 Dropout", "方差除以 d − 1", "忘了重设种子", "残差加错了"])
def test_self_check_notices_a_mistake(tmp_path, name, right, wrong, noticed):
    """几种常见的错：各自那条自查变成 ✗。"""
    failed, _ = broken(tmp_path, name, right, wrong)
    assert any(claim.startswith(noticed) for claim in failed), failed


# ---------- 与参考实现一致 ----------


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_tiny_model_equals_the_reference(reference, qkv_bias):
    """同一个种子，参数逐位相同；logits、损失、梯度、续写相同（续写超过上下文长度，会截断）。"""
    ours, theirs = pair(reference, TINY | {"qkv_bias": qkv_bias})
    state, state2 = ours.state_dict(), theirs.state_dict()
    assert list(state) == list(state2)
    assert all(torch.equal(state[name].to(state2[name].dtype), state2[name]) for name in state)
    same_behaviour(ours, theirs, ids(TINY))


@pytest.mark.parametrize("direction", ["读参考的", "给参考读"])
def test_state_dict_goes_both_ways(reference, direction):
    """两边的检查点可以互相加载，一个名字都不差（strict=True）。"""
    ours, theirs = gpt.GPTModel(TINY), reference.GPTModel(TINY)
    with torch.no_grad():  # 归一化的参数初值是 1 和 0，打乱了才看得出有没有真的用上
        for p in [*ours.parameters(), *theirs.parameters()]:
            p.add_(torch.randn_like(p) * 0.1)
    source, target = (theirs, ours) if direction == "读参考的" else (ours, theirs)
    target.load_state_dict(source.state_dict(), strict=True)
    same_behaviour(ours, theirs, ids(TINY))


def test_training_mode_draws_the_same_dropout(reference):
    """训练模式下，四处 dropout 的位置和次序也与参考相同：同一个种子，结果相同。"""
    ours, theirs = pair(reference, TINY | {"drop_rate": 0.3})
    batch = ids(TINY)
    outputs = []
    for model in (ours, theirs):
        torch.manual_seed(7)
        outputs.append(model(batch))
    assert (outputs[0] - outputs[1]).abs().max() <= 1e-5
    assert not torch.allclose(ours(batch), ours(batch), atol=1e-3)
    ours.eval()
    assert torch.equal(ours(batch), ours(batch))


def test_full_model_equals_the_reference():
    """124M：参数逐位相同，logits、损失、梯度、20 步续写相同。"""
    ours, (theirs, _) = full_model().model, reference_full_model()
    state, state2 = ours.state_dict(), theirs.state_dict()
    assert list(state) == list(state2)
    assert all(torch.equal(state[name].to(state2[name].dtype), state2[name]) for name in state)
    theirs.load_state_dict(state, strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    same_behaviour(ours, theirs, full_model().batch)


def test_full_model_training_logits_equal_the_reference():
    """4-10：dropout 因系统而异，但在同一台机器上应与参考实现相同。"""
    _, expected = reference_full_model()
    assert (full_model().out.detach() - expected).abs().max() <= 1e-5


# ---------- 与 transformers 一致 ----------


def test_matches_transformers_gpt2():
    """把权重换个名字搬过去，与 transformers 的 GPT-2 给出同样的 logits。"""
    transformers = pytest.importorskip("transformers", reason="没有安装 transformers，无从对照")
    torch.manual_seed(3)
    ours = gpt.GPTModel(TINY).eval()
    with torch.no_grad():
        for p in ours.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    config = transformers.GPT2Config(vocab_size=97, n_positions=16, n_embd=32, n_layer=3, n_head=4, activation_function="gelu_new", tie_word_embeddings=False)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    mine = ours.state_dict()
    weights = {"transformer.wte.weight": mine["tok_emb.weight"], "transformer.wpe.weight": mine["pos_emb.weight"], "lm_head.weight": mine["out_head.weight"]}
    weights |= {"transformer.ln_f.weight": mine["final_norm.scale"], "transformer.ln_f.bias": mine["final_norm.shift"]}
    for i in range(3):
        our, their = f"trf_blocks.{i}.", f"transformer.h.{i}."
        for n in ("1", "2"):
            weights |= {f"{their}ln_{n}.weight": mine[f"{our}norm{n}.scale"], f"{their}ln_{n}.bias": mine[f"{our}norm{n}.shift"]}
        for kind in ("weight", "bias"):  # transformers 把 Q、K、V 并排存，而且线性层的权重是转置的
            turn = (lambda x: x.T) if kind == "weight" else (lambda x: x)
            weights[f"{their}attn.c_attn.{kind}"] = torch.cat([turn(mine[f"{our}att.W_{name}.{kind}"]) for name in ("query", "key", "value")], dim=-1)
            weights[f"{their}attn.c_proj.{kind}"] = turn(mine[f"{our}att.out_proj.{kind}"])
            weights[f"{their}mlp.c_fc.{kind}"] = turn(mine[f"{our}ff.layers.0.{kind}"])
            weights[f"{their}mlp.c_proj.{kind}"] = turn(mine[f"{our}ff.layers.2.{kind}"])
    theirs.load_state_dict(weights, strict=True)
    batch = ids(TINY)
    with torch.no_grad():
        assert (ours(batch) - theirs(batch).logits).abs().max() <= 1e-5


# ---------- 各个组件 ----------


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_layer_norm_equals_pytorch(scale):
    """与 F.layer_norm 相同，输出和梯度都是；输入很小时 eps 也起同样的作用。"""
    torch.manual_seed(0)
    norm = gpt.LayerNorm(12).double()
    with torch.no_grad():
        norm.scale.normal_()
        norm.shift.normal_()
    x = (torch.randn(3, 5, 12, dtype=torch.float64) * scale + 0.5).requires_grad_()
    want = F.layer_norm(x, (12,), norm.scale, norm.shift, eps=1e-5)
    assert torch.allclose(norm(x), want, rtol=0, atol=1e-10)
    weight = torch.randn(12, dtype=torch.float64)
    got, expected = (torch.autograd.grad((y * weight).sum(), [x, norm.scale, norm.shift], retain_graph=True) for y in (norm(x), want))
    assert all(torch.allclose(a, b, atol=1e-8) for a, b in zip(got, expected))


def test_gelu_equals_pytorch():
    """与 F.gelu(approximate="tanh") 相同，与精确版差不到千分之一（但不是 0：GPT-2 用的是近似版）。"""
    x = torch.linspace(-10, 10, 2001, dtype=torch.float64)
    assert torch.allclose(gpt.GELU()(x), F.gelu(x, approximate="tanh"), rtol=0, atol=1e-12)
    assert 1e-4 < (gpt.GELU()(x) - F.gelu(x)).abs().max() < 1e-3


@pytest.mark.parametrize(
    "changes, total, tied",
    [
        ({}, 163_009_536, 124_412_160),
        ({"emb_dim": 1024, "n_layers": 24, "n_heads": 16}, 406_212_608, 354_749_440),
        ({"emb_dim": 1280, "n_layers": 36, "n_heads": 20}, 838_220_800, 773_891_840),
        ({"emb_dim": 1600, "n_layers": 48, "n_heads": 25}, 1_637_792_000, 1_557_380_800),
    ],
    ids=["small", "medium", "large", "xl"],
)
def test_parameter_counts_of_all_sizes(changes, total, tied):
    """GPT-2 四种大小的参数量；meta 设备只记形状，不占内存。"""
    with torch.device("meta"):
        model = gpt.GPTModel(gpt.GPT_CONFIG_124M | changes)
    count = sum(p.numel() for p in model.parameters())
    assert (count, count - model.out_head.weight.numel()) == (total, tied)


@pytest.mark.parametrize("position", [0, 7, 15])
def test_causality(position):
    """改动一个词元，前面的 logits 不变，它和后面的都变。"""
    torch.manual_seed(0)
    model = gpt.GPTModel(TINY).eval()
    batch = ids(TINY)
    changed = batch.clone()
    changed[:, position] = (changed[:, position] + 1) % TINY["vocab_size"]
    with torch.no_grad():
        moved = (model(changed) - model(batch)).abs().amax(dim=(0, 2))
    assert (moved[:position] <= 1e-6).all()
    assert (moved[position:] > 1e-3).all()


def test_input_longer_than_the_context_is_refused():
    """正好等于上下文长度可以，多一个就报错，而且说中文。"""
    model = gpt.GPTModel(TINY).eval()
    assert model(ids(TINY, t=16)).shape == (2, 16, 97)
    with pytest.raises(ValueError, match="17 个词元，超过了模型的上下文长度 16"):
        model(ids(TINY, t=17))


def test_heads_that_do_not_divide_are_refused():
    """嵌入维度不能被头数整除时报错。"""
    with pytest.raises(ValueError, match="整除"):
        gpt.GPTModel(TINY | {"n_heads": 5})


class CountingModel(torch.nn.Module):
    """假模型：每个位置都说"下一个是我的编号加 1"，顺便记下每次看到的长度、是否在求梯度。"""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, idx):
        self.seen.append((idx.shape[1], torch.is_grad_enabled()))
        return F.one_hot((idx + 1) % 50, 50).float()


def test_generation_uses_the_last_position_and_crops_the_context():
    """用最后一个位置的分数；太长时只看最近的；批里各走各的；不求梯度。"""
    model = CountingModel()
    out = gpt.generate_text_simple(model, torch.tensor([[3, 9, 5], [8, 2, 48]]), max_new_tokens=4, context_size=5)
    assert out.tolist() == [[3, 9, 5, 6, 7, 8, 9], [8, 2, 48, 49, 0, 1, 2]]
    assert model.seen == [(3, False), (4, False), (5, False), (5, False)]


def test_generation_is_greedy(reference):
    """每一步都是分数最高的那个。"""
    model, _ = pair(reference, TINY)
    model.eval()
    out = gpt.generate_text_simple(model, ids(TINY, b=2, t=4), 6, 16)
    for t in range(4, 10):
        assert torch.equal(model(out[:, :t])[:, -1].argmax(-1), out[:, t])


# ---------- 命令行 ----------

BAD = {
    "不认识的参数": (["--no-such-flag"], "--no-such-flag"),
    "不认识的设备": (["--device", "tpu"], "没有设备 tpu"),
    "提示词是空的": (["--prompt", ""], "--prompt 至少要有一个词元"),
    "生成 0 个": (["--max-new-tokens", "0"], "--max-new-tokens 至少是 1"),
    "生成负数个": (["--max-new-tokens", "-3"], "--max-new-tokens 至少是 1"),
    "不是整数": (["--max-new-tokens", "三"], "--max-new-tokens"),
    "少了值": (["--prompt"], "--prompt"),
}
if not torch.backends.mps.is_available():
    BAD["没有 mps"] = (["--device", "mps"], "没有设备 mps")
if not torch.cuda.is_available():
    BAD["没有 cuda"] = (["--device", "cuda"], "没有设备 cuda")


def no_model(*_):
    """用错参数时不该走到建模型这一步。"""
    raise AssertionError("还没检查完参数就建了模型")


@pytest.mark.parametrize("arguments, says", BAD.values(), ids=BAD.keys())
def test_bad_input_gets_one_sentence(arguments, says, monkeypatch, capsys):
    """用错时：退出码 2，stderr 的最后一行说清楚，什么也没算。"""
    monkeypatch.setattr(sys, "argv", ["gpt.py", *arguments])
    monkeypatch.setattr(gpt, "GPTModel", no_model)
    with pytest.raises(SystemExit) as stopped:
        gpt.main()
    captured = capsys.readouterr()
    assert stopped.value.code == 2
    assert captured.out == ""
    assert says in captured.err.splitlines()[-1] and "Traceback" not in captured.err


def test_bad_input_in_a_real_process():
    """真的开一个进程也一样，没有多余的输出。"""
    code, out, err = run("gpt", "--max-new-tokens", "0")
    assert (code, out) == (2, "")
    assert "--max-new-tokens 至少是 1" in err.splitlines()[-1] and "Traceback" not in err


@pytest.mark.parametrize("name", ["gpt", "example_01_dummy_gpt", "example_06_gpt_model", "example_07_generate_text"])
def test_missing_vocabulary_gets_one_chinese_sentence(name, tmp_path, monkeypatch):
    """词表没有放好时：一句话说先运行哪条命令，退出码 2。"""
    monkeypatch.delenv("LLM_DATA_DIR", raising=False)
    path = tmp_path / f"{name}.py"
    path.write_text((MAIN / f"{name}.py").read_text(encoding="utf-8"), encoding="utf-8")
    code, out, err = run_path(path)
    assert (code, out, err) == (2, "", "找不到 tiktoken，请先运行 python setup/prepare.py\n")


PROMPTS = {"特殊词元": "<|endoftext|>", "中文": "你好，世界", "坏字节": "\udcff", "比上下文长": "hello " * 1100}


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS.keys())
def test_unusual_prompts_work(prompt, monkeypatch, capsys):
    """少见的提示词照常生成；太长的，模型只看最近的那些词元。换成很小的模型，跑得快。"""
    monkeypatch.setattr(sys, "argv", ["gpt.py", "--prompt", prompt, "--max-new-tokens", "2"])
    monkeypatch.setattr(gpt, "GPT_CONFIG_124M", gpt.GPT_CONFIG_124M | {"emb_dim": 12, "n_layers": 1})
    gpt.main()
    out = capsys.readouterr().out
    length = int(re.search(r"输入形状　\(1, (\d+)\)", out).group(1))
    assert f"输出长度　{length + 2} 个词元" in out


def test_help_is_chinese(monkeypatch, capsys):
    """--help 里每个参数都有中文说明。"""
    monkeypatch.setattr(sys, "argv", ["gpt.py", "--help"])
    with pytest.raises(SystemExit) as stopped:
        gpt.main()
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    for flag in ("--prompt", "--max-new-tokens", "--device"):
        assert re.search(rf"{flag} \S+\s+.*[\u4e00-\u9fff]", text)
