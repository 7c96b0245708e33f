"""第 3 章的测试：打印的数字、与独立实现的一致性、因果性、dropout、故意写错时自查的反应、命令行。

数字从脚本的标准输出里读，与原书印出的逐位比较；组件用 PyPI 的 llms-from-scratch 作独立参考。
带 dropout 的两处（3-16、3-17）随系统而变，只查结构：每个数要么是 0，要么正好放大 2 倍。
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # 没有屏幕的机器上也能画图

import matplotlib.pyplot as plt
import pytest
import torch
from once import once

CH03 = Path(__file__).resolve().parent.parent
SCRIPTS = {
    "01": CH03 / "main" / "example_01_simple_attention.py",
    "02": CH03 / "main" / "example_02_trainable_attention.py",
    "03": CH03 / "main" / "example_03_causal_attention.py",
    "04": CH03 / "main" / "example_04_multihead_wrapper.py",
    "05": CH03 / "main" / "example_05_multihead_attention.py",
    "mha": CH03 / "main" / "multihead_attention.py",
    "heatmap": CH03 / "experiments" / "exp_attention_heatmap.py",
}
ENV = os.environ | {"PYTHONUTF8": "1", "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
PICTURE = CH03 / "outputs" / "attention_heatmap.png"


def load(key):
    """按路径载入一个脚本（逐步讲解的脚本会顺便跑一遍）。"""
    spec = importlib.util.spec_from_file_location(f"ch03_{key}", SCRIPTS[key])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def outputs():
    """从别的文件夹里把每个脚本当作命令各跑一遍，留下标准输出。"""
    results, started = {}, []
    for key, path in SCRIPTS.items():
        done = once(path)
        assert done.returncode == 0, done.stderr
        assert done.left == [], "脚本在当前文件夹里留下了文件"
        results[key] = done.stdout
        started.append(done.started)
    results["started"] = min(started)
    return results


@pytest.fixture(scope="module")
def ours():
    """本章的全部组件，名字到类。"""
    names = {"SelfAttention_v1": "02", "SelfAttention_v2": "02", "CausalAttention": "03", "MultiHeadAttentionWrapper": "04", "MultiHeadAttention": "05"}
    modules = {key: load(key) for key in set(names.values())}
    return {name: getattr(modules[key], name) for name, key in names.items()}


def numbers_after(output, label, count):
    """标签之后的前 count 个小数（-inf 也算）。"""
    assert output.count(label) == 1, f"输出里应当正好有一处「{label}」，有 {output.count(label)} 处"
    found = re.findall(r"-?(?:\d+\.\d*(?:e[-+]\d+)?|inf)", output.split(label)[1])
    return [float(number) for number in found[:count]]


def parse(text):
    return [float(number) for number in text.split()]


# 每行：编号、脚本、标签、应当打印的数。
BOOK = [
    ("3-01", "01", "journey 对 6 个词的注意力分数", "0.9544 1.4950 1.4754 0.8434 0.7070 1.0865"),
    ("点积", "01", "Your · journey　逐个相乘再相加", "0.9544 0.9544"),
    ("3-02", "01", "除以总和　　", "0.1455 0.2278 0.2249 0.1285 0.1077 0.1656 1.0"),
    ("3-03", "01", "自己写的 softmax tensor", "0.1385 0.2379 0.2333 0.1240 0.1082 0.1581 1.0"),
    ("3-03 torch", "01", "torch 的 softmax tensor", "0.1385 0.2379 0.2333 0.1240 0.1082 0.1581 1.0"),
    ("3-04", "01", "journey 的上下文向量 tensor", "0.4419 0.6515 0.5683"),
    ("3-07", "01", "所有词的上下文向量 (t, d)", ".4421 .5931 .5790 .4419 .6515 .5683 .4431 .6496 .5671 .4304 .6298 .5510 .4671 .5910 .5266 .4177 .6503 .5645"),
    ("3-08", "02", "【3.4.1】journey 的查询", "0.4306 1.4551"),
    ("3-09 一个", "02", "journey 对自己的分数", "1.8524"),
    ("3-09 全部", "02", "journey 对 6 个词的分数", "1.2705 1.8524 1.8111 1.0795 0.5577 1.5440"),
    ("3-10 权重", "02", "journey 的注意力权重", ".1500 .2264 .2199 .1311 .0906 .1820"),
    ("3-10 向量", "02", "journey 的上下文向量 tensor", "0.3061 0.8210"),
    ("3-11", "02", "SelfAttention_v1 的输出 (t, d_out)", ".2996 .8053 .3061 .8210 .3058 .8203 .2948 .7939 .2927 .7891 .2990 .8040"),
    ("3-12", "02", "SelfAttention_v2 的输出 (t, d_out)", "-.0739 .0713 -.0748 .0703 -.0749 .0702 -.0760 .0685 -.0763 .0679 -.0754 .0693"),
    ("3-13 第一行", "03", "没有遮挡的注意力权重 (t, t)", ".1921 .1646 .1652 .1550 .1721 .1510"),
    ("3-18", "03", "CausalAttention 的输出", "-.4519 .2216 -.5874 .0058 -.6300 -.0632 -.5675 -.0843 -.5526 -.0981 -.5299 -.1081"),
    ("3-19 第一行", "04", "MultiHeadAttentionWrapper 的输出\n", "-.4519 .2216 .4772 .1063"),
    ("3.6.2 合算", "05", "四维矩阵乘法　(1", "1.3208 1.1631 1.2879 1.1631 2.2150 1.8424 1.2879 1.8424 2.0402 "
     ".4391 .7003 .5903 .7003 1.3737 1.0620 .5903 1.0620 .9912"),
    ("3.6.2 第 1 个头", "05", "第 1 个头单独算", "1.3208 1.1631 1.2879 1.1631 2.2150 1.8424 1.2879 1.8424 2.0402"),
    ("3.6.2 第 2 个头", "05", "第 2 个头单独算", ".4391 .7003 .5903 .7003 1.3737 1.0620 .5903 1.0620 .9912"),
    ("3-20", "05", "\nMultiHeadAttention 的输出", ".3190 .4858 .2943 .3897 .2856 .3593 .2693 .3873 .2639 .3928 .2575 .4028"),
    ("3-20 总结", "mha", "上下文向量(2, 6, 2)", ".3190 .4858 .2943 .3897 .2856 .3593 .2693 .3873 .2639 .3928 .2575 .4028"),
]
# 矩阵里只知道某一行的：编号、脚本、标签、每行几个、第几行（从 0 数）、应当打印的数。
BOOK_ROWS = [
    ("3-06 第一行", "01", "注意力权重 (t, t)", 6, 0, ".2098 .2006 .1981 .1242 .1220 .1452"),
    ("3-06 第六行", "01", "注意力权重 (t, t)", 6, 5, ".1385 .2184 .2128 .1420 .0988 .1896"),
    ("循环的第二行", "01", "两重循环得到的注意力分数 (t, t)", 6, 1, "0.9544 1.4950 1.4754 0.8434 0.7070 1.0865"),
    ("矩阵的第二行", "01", "矩阵乘法得到的注意力分数 (t, t)", 6, 1, "0.9544 1.4950 1.4754 0.8434 0.7070 1.0865"),
    ("3-13 第六行", "03", "没有遮挡的注意力权重 (t, t)", 6, 5, ".1935 .1663 .1666 .1542 .1666 .1529"),
    ("3-18 第二份", "03", "CausalAttention 的输出", 12, 1, "-.4519 .2216 -.5874 .0058 -.6300 -.0632 -.5675 -.0843 -.5526 -.0981 -.5299 -.1081"),
    ("3-19 第六行", "04", "MultiHeadAttentionWrapper 的输出\n", 4, 5, "-.5299 -.1081 .5077 .3493"),
    ("3-20 第二份", "mha", "上下文向量(2, 6, 2)", 12, 1, ".3190 .4858 .2943 .3897 .2856 .3593 .2693 .3873 .2639 .3928 .2575 .4028"),
]
CAUSAL_WEIGHTS = (  # 3-14：两种遮法都应得到它
    "1 0 0 0 0 0 .5517 .4483 0 0 0 0 .3800 .3097 .3103 0 0 0 .2758 .2460 .2462 .2319 0 0 "
    ".2175 .1983 .1984 .1888 .1971 0 .1935 .1663 .1666 .1542 .1666 .1529"
)


@pytest.mark.parametrize(("name", "key", "label", "expected"), BOOK, ids=[row[0] for row in BOOK])
def test_book_numbers(outputs, name, key, label, expected):
    want = parse(expected)
    assert numbers_after(outputs[key], label, len(want)) == pytest.approx(want, abs=6e-5)


@pytest.mark.parametrize(("name", "key", "label", "width", "row", "expected"), BOOK_ROWS, ids=[row[0] for row in BOOK_ROWS])
def test_book_rows(outputs, name, key, label, width, row, expected):
    found = numbers_after(outputs[key], label, width * (row + 1))[width * row :]
    assert found == pytest.approx(parse(expected), abs=6e-5)


def test_loop_prints_the_same_matrix_as_matmul(outputs):
    """3.3.2：两重循环与矩阵乘法打印的 36 个数逐个相同。"""
    loop = numbers_after(outputs["01"], "两重循环得到的注意力分数 (t, t)", 36)
    assert len(loop) == 36 and loop == numbers_after(outputs["01"], "矩阵乘法得到的注意力分数 (t, t)", 36)


@pytest.mark.parametrize("label", ["每行除以自己的和", "再 softmax 的权重：与办法一的相同吗？"])
def test_both_ways_of_masking(outputs, label):
    """3-14：先 softmax 后归一化，与先填 -inf 再 softmax，打印同样的权重。"""
    assert numbers_after(outputs["03"], label, 36) == pytest.approx(parse(CAUSAL_WEIGHTS), abs=6e-5)


def test_masked_scores(outputs):
    """3-15：右上角是 -inf，其余是原来的分数。"""
    found = numbers_after(outputs["03"], "填成 -inf 之后的分数 (t, t)", 36)
    assert found[:8] == pytest.approx([0.2899, *[-torch.inf] * 5, 0.4656, 0.1723], abs=6e-5)
    assert found[30:] == pytest.approx([0.3408, 0.1270, 0.1290, 0.0198, 0.1290, 0.0078], abs=6e-5)
    assert [number == -torch.inf for number in found] == [column > row for row in range(6) for column in range(6)]


def test_dropout_of_ones(outputs):
    """3-16：丢哪几个随系统而变；但只能是 0 或 2，而且两种都有不少。"""
    found = numbers_after(outputs["03"], "全是 1 的矩阵，丢掉一半", 36)
    assert set(found) == {0, 2} and 6 <= found.count(0) <= 30


def test_dropout_of_causal_weights(outputs):
    """3-17：每个权重要么是 0，要么正好是 3-14 的 2 倍。"""
    found, kept = numbers_after(outputs["03"], "因果注意力权重，丢掉一半", 36), parse(CAUSAL_WEIGHTS)
    assert len(found) == 36
    for got, weight in zip(found, kept):
        assert got == 0 or got == pytest.approx(2 * weight, abs=2e-4)
    assert sum(found) > 0


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("02", "键　(6, 2)"),
        ("02", "值　(6, 2)"),
        ("03", "批　(2, 6, 3)"),
        ("03", "形状　(2, 6, 2)"),
        ("03", "W_query 在 meta，mask 在 meta，plain_mask 在 cpu"),
        ("04", "形状　(2, 6, 4)"),
        ("05", "形状　(2, 6, 2)"),
        ("mha", "输入　　　(2, 6, 3)"),
    ],
)
def test_printed_shapes(outputs, key, text):
    assert text in outputs[key]


@pytest.mark.parametrize("key", SCRIPTS)
def test_self_checks_pass(outputs, key):
    assert "这个数字对吗？" in outputs[key] and outputs[key].count("✓") >= 3
    assert "✗" not in outputs[key]


def test_slow_motion_prints_every_shape_in_order(outputs):
    """3.6.2：慢动作里每一步的形状，b、t、h、k 各不相同，所以次序错了看得出来。"""
    shown = re.findall(r"^  (\(.*?\)) +(\(b, .*?\))", outputs["05"].split("慢动作（")[1], flags=re.MULTILINE)
    sizes = {"b": 2, "t": 6, "h": 3, "k": 4, "d_out": 12}
    assert [letters for _, letters in shown] == [
        *("(b, t, d_out)", "(b, t, h, k)", "(b, h, t, k)", "(b, h, t, t)", "(b, h, t, t)", "(b, h, t, t)"),
        *("(b, h, t, k)", "(b, t, h, k)", "(b, t, d_out)", "(b, t, d_out)"),
    ]
    for shape, letters in shown:
        assert eval(shape) == tuple(sizes[letter] for letter in letters[1:-1].split(", "))


def test_heads_split_the_right_way_in_script(outputs):
    """十位是词，个位是维：先 view 再 transpose 得到的，和一步 view 得到的。"""
    assert "第 1 个头 [[10, 11], [20, 21], [30, 31]]" in outputs["05"] and "第 2 个头 [[12, 13], [22, 23], [32, 33]]" in outputs["05"]
    assert "第 1 个头却是 [[10, 11], [12, 13], [20, 21]]" in outputs["05"]


def test_wrapper_and_big_matrix_agree_in_script(outputs):
    assert numbers_after(outputs["05"], "的输出最多相差", 1)[0] <= 1e-6


# 「动手改」里说会变成 ✗ 的，真的会：脚本、把什么换成什么、哪几条自查发现它。
WRONG = [
    ("01", "QUERY = 1", "QUERY = 0", 0, ""),  # 换一个词当查询，自查仍然全对
    ("01", "weights = torch.softmax(scores, dim=-1)", "weights = torch.softmax(scores, dim=0)", 3, "每行权重之和为 1"),
    ("02", "x @ self.W_key", "x @ self.W_query", 1, "SelfAttention_v1 的第 2 行"),
    ("03", "scores.masked_fill_(self.mask[:t, :t], -torch.inf)", "scores.masked_fill_(self.mask[:t, :t], 0)", 3, "抹掉最后一个词"),
    ("04", "nn.ModuleList([", "list([", 1, "参数一共 36 个"),
    ("05", ".view(b, t, self.num_heads, self.head_dim).transpose(1, 2)", ".view(b, self.num_heads, t, self.head_dim)", 4, "慢动作的结果"),
    ("05", "scores / self.head_dim**0.5", "scores", 2, "慢动作的结果"),
    ("mha", "scores / self.head_dim**0.5", "scores", 1, "与 PyTorch 自带的注意力结果相同"),
]


@pytest.mark.parametrize(("key", "right", "wrong", "failed", "noticed"), WRONG, ids=[f"{row[0]} {row[2]}" for row in WRONG])
def test_self_check_notices_a_mistake(tmp_path, key, right, wrong, failed, noticed):
    """故意写错一处，再跑一遍：变成 ✗ 的正好是那几条。"""
    text = SCRIPTS[key].read_text(encoding="utf-8")
    assert right in text
    path = tmp_path / SCRIPTS[key].name
    path.write_text(text.replace(right, wrong), encoding="utf-8")
    done = subprocess.run([sys.executable, str(path)], env=ENV, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "✗" in line]
    assert len(lines) == failed and (not failed or any(noticed in line for line in lines)), lines


# ---- 组件：与独立实现一致 ----


def reference(name):
    return getattr(pytest.importorskip("llms_from_scratch.ch03", reason="没有装 llms-from-scratch，跳过与独立实现的比较"), name)


CASES = [
    ("SelfAttention_v1", (6, 4), {}),
    ("SelfAttention_v2", (6, 4), {}),
    ("SelfAttention_v2", (6, 4), {"qkv_bias": True}),
    ("CausalAttention", (6, 4, 9, 0.0), {}),
    ("CausalAttention", (6, 4, 9, 0.5), {"qkv_bias": True}),
    ("MultiHeadAttentionWrapper", (6, 4, 9, 0.0), {"num_heads": 3}),
    ("MultiHeadAttentionWrapper", (6, 4, 9, 0.5), {"num_heads": 2, "qkv_bias": True}),
    ("MultiHeadAttention", (6, 12, 9, 0.0), {"num_heads": 1}),
    ("MultiHeadAttention", (6, 12, 9, 0.0), {"num_heads": 3}),
    ("MultiHeadAttention", (6, 12, 9, 0.5), {"num_heads": 4, "qkv_bias": True}),
]


@pytest.mark.parametrize(("name", "args", "kwargs"), CASES, ids=[f"{name}-{i}" for i, (name, *_) in enumerate(CASES)])
def test_equals_reference(ours, name, args, kwargs):
    """同样的权重、同样的输入：输出、输入的梯度、每个参数的梯度都相同（带 dropout 时用同一个种子）。"""
    torch.manual_seed(5)
    theirs, mine = reference(name)(*args, **kwargs), ours[name](*args, **kwargs)
    mine.load_state_dict(theirs.state_dict())  # 严格：名字和形状必须完全一样，书里模型的权重能直接读进来
    theirs.load_state_dict(mine.state_dict())  # 反过来也行
    # 乘 3：让 softmax 远离平均，缩放写错了才看得出来；t = 7 比 context_length = 9 短，掩码必须截取。
    x = torch.randn(7, 6) * 3 if name.startswith("Self") else torch.randn(2, 7, 6) * 3
    results = []
    for module in (theirs, mine):
        each = x.clone().requires_grad_()
        torch.manual_seed(6)
        out = module(each)
        out.backward(torch.linspace(-1, 1, out.numel()).view(out.shape))
        results.append({"输出": out.detach(), "输入": each.grad, **{key: value.grad for key, value in module.named_parameters()}})
    assert results[0].keys() == results[1].keys()
    for key, value in results[0].items():
        assert value.shape == results[1][key].shape
        assert (value - results[1][key]).abs().max() <= 1e-6 * max(1, value.abs().max()), f"{key} 不同"


@pytest.mark.parametrize("name", ["SelfAttention_v1", "SelfAttention_v2", "CausalAttention", "MultiHeadAttentionWrapper", "MultiHeadAttention"])
def test_same_seed_same_weights(ours, name):
    """同一个种子建出来的初始权重与独立实现逐位相同：创建各层的次序没有变。"""
    args = {"SelfAttention_v1": (3, 2), "SelfAttention_v2": (3, 2), "CausalAttention": (3, 2, 6, 0.0)}.get(name, (3, 2, 6, 0.0, 2))
    torch.manual_seed(123)
    theirs = reference(name)(*args).state_dict()
    torch.manual_seed(123)
    mine = ours[name](*args).state_dict()
    assert theirs.keys() == mine.keys()
    assert all(torch.equal(theirs[key], mine[key].to(theirs[key].dtype)) for key in theirs)


def build(ours, name, dropout=0.0):
    """三种因果注意力，输入 5 维，最长 8 个词。"""
    return ours[name](5, 6, 8, dropout) if name == "CausalAttention" else ours[name](5, 6, 8, dropout, num_heads=3)


@pytest.mark.parametrize("name", ["CausalAttention", "MultiHeadAttentionWrapper", "MultiHeadAttention"])
def test_causality(ours, name):
    """第 i 个输出恰好依赖第 0…i 个输入：后面的梯度全是 0，前面的都不是 0。"""
    torch.manual_seed(1)
    attention = build(ours, name)
    x = torch.randn(2, 8, 5, requires_grad=True)
    out = attention(x)
    for i in range(8):
        (gradient,) = torch.autograd.grad(out[:, i].pow(2).sum(), x, retain_graph=True)
        assert torch.all(gradient[:, i + 1 :] == 0), f"第 {i} 个词偷看了后面"
        assert torch.all(gradient[:, : i + 1].abs().sum(dim=-1) > 0), f"第 {i} 个词没有看到前面（或自己）"
        # 换掉后面的词，或者干脆截断，前面的输出都不变。
        changed = x.detach().clone()
        changed[:, i + 1 :] = torch.randn(2, 7 - i, 5) * 100
        assert torch.allclose(attention(changed)[:, : i + 1], out[:, : i + 1], atol=1e-6)
        assert torch.allclose(attention(x[:, : i + 1]), out[:, : i + 1], atol=1e-6)


def test_samples_do_not_mix(ours):
    """批里的一个样本变了，另一个样本的输出不变。"""
    torch.manual_seed(2)
    attention = build(ours, "MultiHeadAttention")
    x = torch.randn(2, 8, 5)
    out = attention(x)
    assert torch.allclose(attention(x[1:])[0], out[1], atol=1e-6) and not torch.allclose(out[0], out[1], atol=1e-3)


def visible_weights(attention, num_heads):
    """让值等于"第几个词"的独热向量、out_proj 什么都不做：输出就是各头的注意力权重本身。"""
    t = 5
    with torch.no_grad():
        for head in getattr(attention, "heads", [attention]):
            head.W_value.weight.copy_(torch.eye(t).repeat(head.W_value.weight.shape[0] // t, 1))
        if hasattr(attention, "out_proj"):
            attention.out_proj.weight.copy_(torch.eye(num_heads * t))
            attention.out_proj.bias.zero_()
    return torch.eye(t).repeat(200, 1, 1)  # 200 个一样的样本，凑够次数看比例


@pytest.mark.parametrize("name", ["CausalAttention", "MultiHeadAttentionWrapper", "MultiHeadAttention"])
def test_dropout_hits_weights_once(ours, name):
    """训练时，每个权重要么是 0，要么正好放大 1/(1-p) 倍（p = 0.2，所以是 1.25 而不是 5）；评估时一个不丢。"""
    torch.manual_seed(3)
    heads = 1 if name == "CausalAttention" else 2
    args = {"CausalAttention": (5, 5, 5, 0.2), "MultiHeadAttentionWrapper": (5, 5, 5, 0.2, 2), "MultiHeadAttention": (5, 10, 5, 0.2, 2)}[name]
    attention = ours[name](*args)
    x = visible_weights(attention, heads)
    kept = attention.eval()(x)
    assert torch.equal(kept, attention(x))
    assert torch.allclose(kept.view(200, 5, heads, 5).sum(dim=-1), torch.ones(1), atol=1e-6), "每个头、每一行的权重之和应为 1"
    dropped = attention.train()(x)
    seen = kept > 0
    assert torch.all((dropped == 0) | torch.isclose(dropped, kept / 0.8, rtol=1e-5))
    assert 0.15 < (dropped[seen] == 0).float().mean() < 0.25


def test_big_matrix_equals_wrapper(ours):
    """4 个头的权重叠进一个大矩阵，out_proj 设成什么都不做，两者输出相同。"""
    torch.manual_seed(4)
    wrapper, big = ours["MultiHeadAttentionWrapper"](6, 3, 9, 0.0, num_heads=4), ours["MultiHeadAttention"](6, 12, 9, 0.0, num_heads=4)
    state = {f"{name}.weight": torch.cat([getattr(head, name).weight for head in wrapper.heads]) for name in ("W_query", "W_key", "W_value")}
    big.load_state_dict(state | {"out_proj.weight": torch.eye(12), "out_proj.bias": torch.zeros(12), "mask": big.mask})
    x = torch.randn(2, 7, 6) * 3
    assert torch.allclose(big(x), wrapper(x), atol=1e-6)


@pytest.mark.parametrize("name", ["CausalAttention", "MultiHeadAttention"])
def test_mask_is_a_buffer(ours, name):
    """掩码跟着搬家、跟着存盘，但不参与训练。"""
    attention = build(ours, name)
    assert "mask" in attention.state_dict() and "mask" not in dict(attention.named_parameters())
    assert attention.to("meta").mask.device.type == "meta"


@pytest.mark.parametrize("heads", [3, 4])
def test_heads_must_divide(ours, heads):
    with pytest.raises(ValueError, match=f"d_out=2 不能被 num_heads={heads} 整除"):
        ours["MultiHeadAttention"](3, 2, 6, 0.0, num_heads=heads)


# ---- 命令行 ----


def call_main(key, monkeypatch, capsys, tmp_path, *args):
    """在本进程里调用 main()，返回退出码、标准输出、标准错误；图片写到临时文件夹。"""
    module = load(key)
    monkeypatch.setattr(sys, "argv", [SCRIPTS[key].name, *args])
    if key == "heatmap":
        monkeypatch.setattr(module, "OUTPUTS", tmp_path / "outputs")
    capsys.readouterr()
    try:
        module.main()
        code = 0
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


BAD = [
    ("mha", ["--heads", "3"], "d_out=2 不能被 num_heads=3 整除"),
    ("mha", ["--heads", "0"], "--heads 至少是 1"),
    ("mha", ["--heads", "-2"], "--heads 至少是 1"),
    ("mha", ["--heads", "两个"], "--heads"),
    ("mha", ["--colour"], "--colour"),
    ("heatmap", ["--heads", "3"], "整除"),
    ("heatmap", ["--heads", "0"], "--heads"),
    ("heatmap", ["--colour"], "--colour"),
]


@pytest.mark.parametrize(("key", "args", "says"), BAD, ids=[" ".join([key, *args]) for key, args, _ in BAD])
def test_bad_input(monkeypatch, capsys, tmp_path, key, args, says):
    """用错时：退出码 2，最后一行说清楚，什么也没印、没写。"""
    code, out, err = call_main(key, monkeypatch, capsys, tmp_path, *args)
    assert code == 2 and out == "" and says in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_bad_heads_as_command():
    done = subprocess.run([sys.executable, str(SCRIPTS["mha"]), "--heads", "3"], env=ENV, capture_output=True, encoding="utf-8")
    assert done.returncode == 2 and done.stdout == "" and "整除" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


@pytest.mark.parametrize("key", ["mha", "heatmap"])
def test_help_is_chinese(monkeypatch, capsys, tmp_path, key):
    code, out, err = call_main(key, monkeypatch, capsys, tmp_path, "--help")
    assert code == 0 and err == "" and re.search(r"--heads \S+\s+头数", out)


def test_single_head_runs(monkeypatch, capsys, tmp_path):
    code, out, _ = call_main("mha", monkeypatch, capsys, tmp_path, "--heads", "1")
    assert code == 0 and "上下文向量(2, 6, 2)" in out and "✗" not in out


# ---- 热图 ----


def test_picture_is_written(outputs):
    """图是这一次写的，打得开，而且不是一张白纸。"""
    assert PICTURE.stat().st_mtime >= outputs["started"] - 1 and PICTURE.stat().st_size > 10_000
    pixels = plt.imread(PICTURE)
    assert pixels.shape[0] > 300 and pixels.shape[1] > 600 and pixels.std() > 0.05
    assert str(PICTURE) in outputs["heatmap"]


def test_heatmap_shows_heads_in_rows(monkeypatch, capsys, tmp_path):
    """8 个头排成两行，图不会无限变宽；每个头都报一个数。"""
    code, out, _ = call_main("heatmap", monkeypatch, capsys, tmp_path, "--heads", "8", "--seed", "1")
    pixels = plt.imread(tmp_path / "outputs" / "attention_heatmap.png")
    assert code == 0 and "✗" not in out and len(re.findall(r"第 \d 个头　\d+%", out)) == 8
    assert pixels.shape[1] < 3 * pixels.shape[0]


def test_difference_of_attention_tables():
    """两张权重表的距离：相同为 0，毫无重合为 1；第一行不算。"""
    difference = load("heatmap").difference
    left, right = torch.tensor([[1.0, 0], [1, 0]]), torch.tensor([[1.0, 0], [0, 1]])
    assert difference(left, left) == 0 and difference(left, right) == 1


def test_heatmap_attention_matches_original(ours):
    """实验里改写的 MultiHeadAttention 只多了一个出口，输出与原处逐位相同。"""
    torch.manual_seed(7)
    original, rewritten = ours["MultiHeadAttention"](8, 8, 6, 0.0, 2), load("heatmap").MultiHeadAttention(8, 8, 6, 0.0, 2)
    rewritten.load_state_dict(original.state_dict())
    x = torch.randn(2, 6, 8)
    assert torch.equal(rewritten(x), original(x)) and rewritten.last_weights.shape == (2, 2, 6, 6)
