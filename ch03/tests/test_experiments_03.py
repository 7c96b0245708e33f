"""第 3 章实验的测试：每个脚本都跑得完、不打 ✗、打印的数字靠得住，用错参数时只说一句话。

各种写法与 PyPI 的 llms-from-scratch（原书作者的代码）、torch 自带的注意力比较；其余的数字由别的途径另算一遍。
都在本进程里用很小的规模跑，图写到临时文件夹；热图的基本部分由 test_ch03.py 检查。
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

pytestmark = pytest.mark.filterwarnings("error:Glyph")  # 字体里没有的字会画成方框，matplotlib 这时警告一声
FOLDER = Path(__file__).resolve().parent.parent / "experiments"
# 名字 → (小规模的参数, 图, 还要改小的常量)。每个脚本还有 --quick，但那是给人看的，在这里太慢。
SMALL = {
    "mha_variants": (["--batch", 2, "--tokens", 24, "--dim", 24, "--heads", 3, "--rounds", 2, "--device", "cpu"], "mha_variants.png", {}),
    "why_scale": (["--dim", 64, "--quick"], "why_scale.png", {"SIZES": (1, 4, 16, 64)}),
    "causal_leak": (["--steps", 30], "causal_leak.png", {"D": 24, "LAYERS": 1}),
    "head_count": (["--quick", "--dim", 16, "--look", 2], "head_count.png", {}),
    "attention_complexity": (["--max-tokens", 256, "--dim", 32, "--device", "cpu", "--quick"], "attention_complexity.png", {}),
    "buffers": (["--layers", 3, "--context-length", 256], "buffers.png", {}),
    "attention_heatmap": (["--heads", 4], "attention_heatmap.png", {}),
}


def load(name):
    """按路径载入一个脚本。"""
    spec = importlib.util.spec_from_file_location(f"exp_{name}", FOLDER / f"exp_{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def command_line(monkeypatch, capsys, tmp_path):
    """像在命令行里一样调用 main()，图写到临时文件夹，返回退出码、标准输出、标准错误。"""
    def call(name, *args, patch=None):
        module = load(name)
        monkeypatch.setattr(module, "OUTPUTS", tmp_path / "outputs")
        for key, value in (patch or {}).items():
            monkeypatch.setattr(module, key, value)
        monkeypatch.setattr(sys, "argv", [f"exp_{name}.py", *map(str, args)])
        capsys.readouterr()
        try:
            module.main()
            code = 0
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def reference():
    return pytest.importorskip("llms_from_scratch.ch03", reason="没有装 llms-from-scratch，无法与它比较")


def test_every_experiment_is_listed():
    """README 的「实验」一节里，每个实验都有一行，写着图和用时。"""
    assert sorted(path.stem for path in FOLDER.glob("exp_*.py")) == sorted(f"exp_{name}" for name in SMALL)
    readme = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    section = readme.split("## 实验")[1].split("\n## ")[0]
    for name, (_, picture, _) in SMALL.items():
        row = next((line for line in section.splitlines() if f"exp_{name}.py" in line), "")
        assert picture in row and re.search(r"\d+ (秒|分钟)", row) and "GB" in row, name


@pytest.mark.parametrize("name", SMALL)
def test_runs_small(command_line, tmp_path, name):
    """小规模跑一遍：退出码 0，自查全过，图是真的图。"""
    args, picture, patch = SMALL[name]
    code, out, err = command_line(name, *args, patch=patch)
    assert code == 0 and "✗" not in out and out.count("✓") >= 3 and err == ""
    pixels = plt.imread(tmp_path / "outputs" / picture)
    assert min(pixels.shape[:2]) > 300 and pixels.std() > 0.05


def test_from_another_folder(tmp_path):
    """从别的文件夹作为命令运行：不崩溃，没有警告，不在当前文件夹留文件。"""
    env = os.environ | {"PYTHONUTF8": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    done = subprocess.run([sys.executable, str(FOLDER / "exp_buffers.py")], cwd=tmp_path, env=env, capture_output=True, encoding="utf-8", timeout=300)
    assert (done.returncode, done.stderr) == (0, "") and "✗" not in done.stdout and "✓" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "args", "says"),
    [
        ("mha_variants", ["--heads", 7], "不能被 num_heads=7 整除"),
        ("mha_variants", ["--batch", 0], "--batch 至少是 1"),
        ("mha_variants", ["--rounds", 1], "--rounds 至少是 2"),
        ("mha_variants", ["--tokens", -5], "--tokens 至少是 1"),
        ("mha_variants", ["--device", "tpu"], "没有设备 tpu"),
        ("why_scale", ["--dim", 0], "--dim 应在 1 到"),
        ("why_scale", ["--steps", 3], "--steps 至少是 20"),
        ("why_scale", ["--seeds", 4], "5 到 10"),
        ("head_count", ["--seeds", 11], "5 到 10"),
        ("causal_leak", ["--steps", "很多"], "invalid int value"),
        ("causal_leak", ["--text", "没有这个文件.txt"], "没有这个文件.txt"),
        ("causal_leak", ["--seed", -1], "--seed"),
        ("head_count", ["--look", 5], "--look 应在 1 到 4 之间"),
        ("head_count", ["--dim", 30], "4 的倍数"),
        ("attention_complexity", ["--heads", 3], "不能被 --heads 3 整除"),
        ("attention_complexity", ["--max-tokens", 100], "--max-tokens 应在 256 到"),
        ("attention_complexity", ["--dim", -4], "至少是 1"),
        ("buffers", ["--layers", 1], "--layers 应在 2 到"),
        ("buffers", ["--context-length", 4], "--context-length 应在"),
        ("buffers", ["--layers", 900, "--context-length", 8192], "请改小"),
        ("attention_heatmap", ["--heads", 3], "不能被 num_heads=3 整除"),
        ("buffers", ["--color"], "unrecognized arguments"),
    ],
)
def test_bad_input(command_line, tmp_path, name, args, says):
    code, out, err = command_line(name, *args)
    assert code == 2 and "Traceback" not in err and says in err.splitlines()[-1]
    assert not (tmp_path / "outputs").exists() and "✓" not in out


@pytest.mark.parametrize("name", SMALL)
def test_help_is_chinese(command_line, name):
    code, out, _ = command_line(name, "--help")
    assert code == 0 and "实验　" in out and "默认" in out


@pytest.mark.parametrize(("text", "says"), [("天地玄黄" * 100, "至少要"), ("ab" * 2000, "只有 2 种字符")])
def test_causal_leak_rejects_poor_text(command_line, tmp_path, text, says):
    path = tmp_path / "短.txt"
    path.write_text(text, encoding="utf-8")
    code, _, err = command_line("causal_leak", "--text", path)
    assert code == 2 and "Traceback" not in err and says in err.splitlines()[-1]


# ---- 各种写法 ----


def test_variants_equal_the_authors_class(reference):
    """八种写法，输出都与原书作者的 MultiHeadAttention 相同，梯度也相同。"""
    module = load("mha_variants")
    torch.manual_seed(0)
    modules = module.build(24, 3, 10)
    theirs = reference.MultiHeadAttention(24, 24, 10, 0.0, 3)
    theirs.load_state_dict(modules["MultiHeadAttention"].state_dict())
    x = torch.randn(2, 10, 24)
    output, grad = module.forward_backward(theirs, x)
    assert len(modules) == 8 and {"Ch03_MHA_Wrapper", "MHAEinsum", "MHAPyTorchScaledDotProduct", "MHAPyTorchSDPAWithoutFlash", "MHAPyTorchClass"} <= modules.keys()
    for name, each in modules.items():
        got, got_grad = module.forward_backward(each, x)
        assert torch.allclose(got, output, atol=1e-6) and torch.allclose(got_grad, grad, atol=1e-7), name
        assert torch.allclose(each(x[:, :4]), output[:, :4], atol=1e-6), f"{name}：短一点的输入"


def test_variants_use_dropout_only_in_training():
    module = load("mha_variants")
    x = torch.randn(1, 8, 16)
    for kind in (module.MultiHeadAttentionCombinedQKV, module.MHAPyTorchScaledDotProduct, module.MHAPyTorchSDPAWithoutFlash, module.MHAPyTorchClass):
        each = kind(16, 16, 2, 8, dropout=0.5)
        assert not torch.equal(each(x), each(x)), kind.__name__
        each.eval()
        assert torch.equal(each(x), each(x)), kind.__name__


def test_core_names_the_kernel():
    """「核心」一栏说的是真的：CPU 上的 SDPA 用 flash，自己传掩码也一样；换成 math 后端就说 math。"""
    module = load("mha_variants")
    modules, x = module.build(32, 2, 16), torch.randn(1, 16, 32)
    assert module.core(modules["MHAPyTorchScaledDotProduct"], x) == module.core(modules["MHAPyTorchSDPAWithoutFlash"], x) == "flash"
    assert module.core(modules["MultiHeadAttention"], x) == "矩阵乘法"
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        assert module.core(modules["MHAPyTorchScaledDotProduct"], x) in ("math", "矩阵乘法")


def test_broken_variant_is_noticed(command_line):
    """把 SDPA 的掩码用反，自查要看得出来。"""
    module = load("mha_variants")

    class Wrong(module.MHAPyTorchScaledDotProduct):
        def attend(self, queries, keys, values):
            return torch.nn.functional.scaled_dot_product_attention(queries, keys, values)

    code, out, _ = command_line("mha_variants", *SMALL["mha_variants"][0], patch={"MHAPyTorchScaledDotProduct": Wrong})
    assert code == 0 and out.count("✗") == 2


# ---- √k ----


def test_scaling_numbers():
    """另算一遍：k 个独立的标准正态数的点积，标准差是 √k；饱和时，传回分数的梯度的中位数几乎为 0，平均数还在。"""
    look = load("why_scale").look
    for power in (0.0, 0.5, 1.0):
        assert look(256, power, 1)["std"] == pytest.approx(256 ** (0.5 - power), rel=0.05)
    plain, scaled, flat = look(1024, 0.0, 1), look(1024, 0.5, 1), look(1024, 1.0, 1)
    assert plain["top"] > 0.9 and scaled["top"] < 0.2 and flat["top"] < 0.02
    assert plain["softmax"][1] < 0.05 * scaled["softmax"][1] and plain["softmax"][0] > 0.1 * scaled["softmax"][0]


def test_chain_rule_takes_the_query_gradient_apart():
    """传回查询的 = 传回分数的 × 键 ÷ 除数：除以 k 的与除以 √k 的，softmax 那一段差不到一倍，差的都在除数里。"""
    look = load("why_scale").look
    scaled, flat = look(1024, 0.5, 1), look(1024, 1.0, 1)
    assert 0.5 < flat["softmax"][1] / scaled["softmax"][1] < 1
    assert flat["query"][1] / scaled["query"][1] == pytest.approx(flat["softmax"][1] / scaled["softmax"][1] / 32, rel=0.15)


def test_lookup_can_be_solved():
    """任务是做得到的：把查询和键的矩阵换成同一个，分数放大，损失就接近值的分类损失。"""
    module = load("why_scale")
    torch.manual_seed(0)
    model = module.Lookup(64, 64, 0.0)
    with torch.no_grad():
        model.W_query.copy_(torch.eye(64))
        model.W_key.copy_(torch.eye(64))
        model.values.weight.zero_()
        model.values.weight[:, :16] = torch.eye(16)
        model.out.weight.zero_()
        model.out.weight[:, :16] = 20 * torch.eye(16)
    keys = torch.stack([torch.randperm(64)[:32] for _ in range(50)])
    values, place = torch.randint(16, (50, 32)), torch.randint(32, (50, 1))
    guess = model(keys.gather(1, place)[:, 0], keys, values).argmax(dim=-1)
    assert (guess == values.gather(1, place)[:, 0]).float().mean() == 1


# ---- 泄漏 ----


def test_leak_is_measured(command_line):
    """没有掩码的模型，训练损失低、真实损失高；正常的模型两者相等。"""
    code, out, _ = command_line("causal_leak", "--steps", 150, patch={"D": 48, "LAYERS": 1})
    rows = {line.split()[-1]: [float(number) for number in line.split()[:4]] for line in out.splitlines() if re.fullmatch(r"(?: +\d+\.\d{3}){4} +\S+", line)}
    assert code == 0 and "✗" not in out and rows.keys() == {"正常", "没有掩码", "掩码偏一格"}
    train, whole, prefix, _ = rows["正常"]
    assert whole == prefix
    # 偏一格的很快就学会抄答案；什么也不遮的要多练一会儿，但已经能量出它偷看了。
    assert rows["掩码偏一格"][1] < 0.5 * whole and rows["掩码偏一格"][2] > prefix + 0.5
    assert rows["没有掩码"][2] > rows["没有掩码"][1]
    assert "这次不相等的是 没有掩码、掩码偏一格" in out


def test_good_masks_are_not_blamed(command_line):
    """三个都用正常的掩码，就一个也不该说偷看；自查因此打 ✗，因为脚本说好了要查出两个。"""
    code, out, _ = command_line("causal_leak", "--steps", 20, patch={"KINDS": {"正常": 1, "没有掩码": 1, "掩码偏一格": 1}, "D": 24, "LAYERS": 1})
    assert code == 0 and "这次不相等的是 （没有）" in out


# ---- 头数 ----


def test_one_head_needs_a_readout_that_is_not_linear():
    """一个头要看两处，线性读出：知道是哪两个，不知道谁先谁后，准确率在 1/8 + 7/8 × 1/2 = 56% 附近；两个头、或一个头加两层的读出，都全对。"""
    train, threads = load("head_count").train_once, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        accuracy = {case: train(*case, 2, 32, 200, 5)["accuracy"] for case in ((1, "线性"), (2, "线性"), (1, "两层"))}
    finally:
        torch.set_num_threads(threads)
    assert 0.5 < accuracy[1, "线性"] < 0.75 and accuracy[2, "线性"] > 0.97 and accuracy[1, "两层"] > 0.95


@pytest.mark.parametrize("name", ["head_count", "why_scale"])
def test_quick_says_nothing_about_training(command_line, name):
    code, out, _ = command_line(name, "--quick")
    assert code == 0 and "看流程，不下结论" in out and not re.search("更低|更高|分不出", out)


def test_gaze_counts_backwards():
    module = load("head_count")
    weights = torch.zeros(10, 10)
    weights[torch.arange(3, 10), torch.arange(0, 7)] = 1.0
    assert module.gaze(weights) == pytest.approx([0, 0, 0, 1, 0, 0])


# ---- 时间与内存 ----


def test_slope():
    slope = load("attention_complexity").slope
    assert slope([64, 128, 256], [5 * t**1.7 for t in (64, 128, 256)]) == pytest.approx(1.7)


def test_power_is_withheld_when_the_rounds_disagree():
    """各轮一致时说得出次方；有一段时间机器忙、或点不在一条直线上，就不说。"""
    power, lengths = load("attention_complexity").power, [256, 512, 1024]
    good = [[t**2 * (1 + 0.02 * i) for i in range(5)] for t in lengths]
    assert power(lengths, good)[0] == pytest.approx(2) and "t^2.00" in power(lengths, good)[1]
    busy = [[t**2 * (1, 1, 3, 0.4, 2)[(i + j) % 5] for i in range(5)] for j, t in enumerate(lengths)]
    bent = [[value] * 5 for value in (1.0, 9.0, 9.5)]
    assert all("说不出几次方" in power(lengths, runs)[1] for runs in (busy, bent))


def test_compare_needs_separated_quartiles():
    compare = load("attention_complexity").compare
    assert compare([2.0, 2.1, 2.2, 2.3], [1.0, 1.1, 1.1, 1.2]) == "1.95 倍"
    assert compare([1.0, 1.3, 1.1, 2.0], [1.0, 1.1, 1.1, 1.2]).startswith("分不出")


def test_turns_do_not_count_the_neighbours():
    """只有一个线程时量的是 CPU 时间：睡着的时候（别的程序占着核）不算。"""
    import time

    take_turns, threads = load("attention_complexity").take_turns, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        turns = take_turns({"睡": lambda: time.sleep(0.05), "算": lambda: sum(range(200_000))}, 3)
    finally:
        torch.set_num_threads(threads)
    assert {name: len(values) for name, values in turns.items()} == {"睡": 3, "算": 3} and max(turns["睡"]) < 0.02


@pytest.mark.parametrize(("d", "h"), [(32, 4), (48, 2)])
def test_saved_bytes(d, h):
    """另数一遍：留住的内存，SDPA 的没有 t² 项，手写的有 h·t² 个数；参数不算。"""
    module = load("attention_complexity")
    parts, device = module.Parts(d, h), torch.device("cpu")
    count = {(name, t): module.saved_bytes(work) for t in (64, 128) for name, work in parts.works(t, device).items()}
    for t in (64, 128):
        assert count["手写", t] == 4 * (3 * t * d + h * t * t) + t * t
        assert count["SDPA", t] == 4 * (4 * t * d + h * t)  # Q、K、V、输出，以及每行一个 logsumexp
        assert count["投影", t] == 4 * 4 * t * d  # 输入 x，和 qkv 的结果 3td（out_proj 的输入是它的一段）


# ---- buffer ----


def test_buffer_numbers(command_line):
    code, out, _ = command_line("buffers", "--layers", 4, "--context-length", 512)
    assert code == 0 and f"{4 * 512 * 512:,} 字节" in out and "又成了 4 张" in out
    assert "size mismatch for 0.mask" in out and "普通属性　掩码在 cpu" in out


def test_masks_agree_with_the_author(reference):
    module = load("buffers")
    theirs = reference.MultiHeadAttention(32, 32, 16, 0.0, 2)
    x = torch.randn(2, 9, 32)
    for keep in module.KEEP:
        ours = module.MultiHeadAttention(32, 32, 16, 0.0, 2, keep=keep)
        ours.load_state_dict(theirs.state_dict() if keep == "buffer" else {name: value for name, value in theirs.state_dict().items() if name != "mask"})
        assert torch.allclose(ours(x), theirs(x), atol=1e-6), keep


# ---- 训练过的模型的热图 ----


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """一个很小的检查点，格式与第 5 章存的相同；第 1 层第 2 个头改成专看自己。"""
    module, config = load("attention_heatmap"), {"vocab_size": 50257, "context_length": 32, "emb_dim": 16, "n_heads": 2, "n_layers": 2, "drop_rate": 0.1, "qkv_bias": False}
    torch.manual_seed(0)
    model = module.GPTModel(config)
    with torch.no_grad():
        att = model.trf_blocks[0].att
        att.W_query.weight[8:] = 8 * torch.eye(16)[8:]
        att.W_key.weight[8:] = 8 * torch.eye(16)[8:]
    path = tmp_path_factory.mktemp("checkpoint") / "gpt.pth"
    torch.save({"config": config, "model": model.state_dict(), "optimizer": {}}, path)
    return path


def test_trained_heads(command_line, tmp_path, checkpoint):
    code, out, err = command_line("attention_heatmap", "--prompt", "It was a long way to the city", patch={"CHECKPOINT": checkpoint})
    assert (code, err) == (0, "") and "✗" not in out
    # 第 1 层第 2 个头被改成了专看自己：最鲜明的一格里，谁在看和看谁是同一个词。
    assert "2 层 × 2 个头，送进 8 个词元" in out and re.search(r"第 1 层最鲜明的一格：第 2 个头，('.+') 把 \d+% 的权重给了 \1", out)
    assert plt.imread(tmp_path / "outputs" / "attention_trained.png").std() > 0.05


def test_without_checkpoint_it_says_what_to_run(command_line, tmp_path):
    code, out, _ = command_line("attention_heatmap", patch={"CHECKPOINT": tmp_path / "gpt_mini.pth"})
    assert code == 0 and "先运行 python ch05/main/gpt_train.py" in out and not (tmp_path / "outputs" / "attention_trained.png").exists()


def test_prompt_length(command_line, checkpoint):
    code, _, err = command_line("attention_heatmap", "--prompt", "a " * 60, patch={"CHECKPOINT": checkpoint})
    assert code == 2 and "--prompt 应有" in err.splitlines()[-1]
