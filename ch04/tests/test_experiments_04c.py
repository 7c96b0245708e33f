"""第 4 章实验的测试（梯度、归一化与激活函数、logit lens）：跑得完、不打 ✗、数字靠得住，用错参数时只说一句话。

RMSNorm 与 torch 自带的比，GPT 与 PyPI 的 llms-from-scratch（原书作者的代码）比；都用很小的规模，图写到临时文件夹。
"""

import importlib.util
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # 没有屏幕的机器上也能画图

import matplotlib.pyplot as plt
import pytest
import torch

pytestmark = pytest.mark.filterwarnings("error:Glyph")  # 字体里没有的字会画成方框，matplotlib 这时警告一声
FOLDER = Path(__file__).resolve().parent.parent / "experiments"
SMALL = {
    "shortcut_gradients": (["--depth", 6, "--quick"], "shortcut_gradients.png"),
    "norms_and_activations": (["--quick"], "norms_and_activations.png"),
    "logit_lens": ([], "logit_lens.png"),
}
TINY = {"vocab_size": 50257, "context_length": 32, "emb_dim": 16, "n_heads": 2, "n_layers": 3, "drop_rate": 0.1, "qkv_bias": False}


def load(name):
    """按路径载入一个脚本。"""
    spec = importlib.util.spec_from_file_location(f"exp_{name}", FOLDER / f"exp_{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def command_line(monkeypatch, capsys, tmp_path, checkpoint):
    """像在命令行里一样调用 main()，图写到临时文件夹，返回退出码、标准输出、标准错误。"""
    def call(name, *args, patch=None, trained=checkpoint):
        module = load(name)
        monkeypatch.setattr(module, "OUTPUTS", tmp_path / "outputs")
        monkeypatch.setenv("LLM_DATA_DIR", str(trained.parent))  # 那里的 gpt_mini.pth 排在 ch05/outputs/ 的前面
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
    return pytest.importorskip("llms_from_scratch.ch04", reason="没有装 llms-from-scratch，无法与它比较")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """一个很小的检查点，格式与第 5 章存的相同。"""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / "gpt_mini.pth"
    torch.save({"config": TINY, "model": load("logit_lens").GPTModel(TINY).state_dict(), "optimizer": {}}, path)
    return path


@pytest.mark.parametrize("name", SMALL)
def test_runs_small(command_line, tmp_path, name):
    args, picture = SMALL[name]
    code, out, err = command_line(name, *args)
    assert code == 0 and "✗" not in out and out.count("✓") == 3 and err == ""
    pixels = plt.imread(tmp_path / "outputs" / picture)
    assert min(pixels.shape[:2]) > 300 and pixels.std() > 0.05


@pytest.mark.parametrize("init", [0.1, 0.5, 1.7, 3])
def test_other_initial_weights(command_line, init):
    """换别的合法参数，也没有 ✗。"""
    code, out, _ = command_line("shortcut_gradients", "--init", init, "--depth", 2, "--quick")
    assert code == 0 and "✗" not in out and "nan" not in out.split("②")[0]


@pytest.mark.parametrize(
    ("name", "args", "says"),
    [
        ("shortcut_gradients", ["--depth", 0], "--depth 应在 1 到"),
        ("shortcut_gradients", ["--init", 100], "--init 应在"),
        ("shortcut_gradients", ["--seeds", 2], "5 到 10"),
        ("shortcut_gradients", ["--steps", "许多"], "invalid int value"),
        ("norms_and_activations", ["--layers", -1], "--layers 应在 1 到"),
        ("norms_and_activations", ["--lr", 2], "unrecognized arguments"),
        ("norms_and_activations", ["--text", "没有.txt"], "没有.txt"),
        ("logit_lens", ["--prompt", "a"], "--prompt 应有 3 到"),
        ("logit_lens", ["--prompt", "a b " * 20], "--prompt 应有 3 到"),
        ("logit_lens", ["--text", "没有.txt"], "没有.txt"),
        ("logit_lens", ["--lens"], "unrecognized arguments"),
    ],
)
def test_bad_input(command_line, tmp_path, name, args, says):
    code, out, err = command_line(name, *args)
    assert (code, out) == (2, "") and "Traceback" not in err and says in err.splitlines()[-1]
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("name", SMALL)
def test_help_is_chinese(command_line, name):
    code, out, _ = command_line(name, "--help")
    assert code == 0 and "实验　" in out and "默认" in out


# ---- 梯度 ----


def test_gradients_by_finite_difference():
    """两层的小网络，第一层某个权重的梯度与「动一点点、看损失变多少」相同。"""
    module = load("shortcut_gradients")
    for kind in module.KINDS:
        torch.manual_seed(0)
        model, x, direction = module.Stack(2, kind).double(), torch.randn(4, module.D).double(), torch.randn(4, module.D).double()
        (model(x) * direction).sum().backward()
        weight, step = model.layers[0][0].weight, 1e-5
        with torch.no_grad():
            weight[3, 5] += step
            up = (model(x) * direction).sum()
            weight[3, 5] -= 2 * step
            down = (model(x) * direction).sum()
        assert weight.grad[3, 5].item() == pytest.approx(((up - down) / (2 * step)).item(), rel=1e-4), kind


def test_depth_makes_the_difference():
    """没有残差时，首层梯度随深度成倍变小；有残差时不会。"""
    gradients = load("shortcut_gradients").gradients
    ratio = {(kind, depth): gradients(depth, kind, 1.0)[0] / gradients(depth, kind, 1.0)[-1] for kind in ("没有残差", "残差 + 归一化") for depth in (8, 32)}
    assert ratio["没有残差", 32] < 1e-8 * ratio["没有残差", 8] and 0.1 < ratio["残差 + 归一化", 32] < 10


# ---- 归一化与激活函数 ----


def test_rmsnorm_equals_torch():
    if not hasattr(torch.nn, "RMSNorm"):
        pytest.skip("这个版本的 torch 没有 nn.RMSNorm")
    ours, theirs, x = load("norms_and_activations").RMSNorm(12), torch.nn.RMSNorm(12, eps=1e-5), torch.randn(3, 7, 12) * 4 + 1
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)


def test_base_recipe_equals_the_author(reference):
    """不改任何一样时，改写的 GPTModel 就是原书作者的那个。"""
    module = load("norms_and_activations")
    config = TINY | {"vocab_size": 40, "drop_rate": 0.0}
    theirs, ours = reference.GPTModel(config), module.GPTModel(config | module.RECIPES[module.BASE])
    ours.load_state_dict(theirs.state_dict())
    x = torch.randint(40, (2, 9))
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)


def test_post_norm_equals_torch():
    """后置归一化的块，与 torch 自带的 TransformerEncoderLayer(norm_first=False) 相同。"""
    module = load("norms_and_activations")
    cfg = TINY | {"norm": "LayerNorm", "place": "post", "activation": "ReLU", "drop_rate": 0.0, "qkv_bias": True}
    ours, theirs = module.TransformerBlock(cfg), torch.nn.TransformerEncoderLayer(16, 2, 64, dropout=0.0, batch_first=True, norm_first=False)
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(torch.cat([ours.att.W_query.weight, ours.att.W_key.weight, ours.att.W_value.weight]))
        theirs.self_attn.in_proj_bias.copy_(torch.cat([ours.att.W_query.bias, ours.att.W_key.bias, ours.att.W_value.bias]))
        for source, target in [(ours.att.out_proj, theirs.self_attn.out_proj), (ours.ff.layers[0], theirs.linear1), (ours.ff.layers[2], theirs.linear2)]:
            target.load_state_dict(source.state_dict())
    x = torch.randn(2, 6, 16)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(6)
    assert torch.allclose(ours(x), theirs(x, src_mask=mask), atol=1e-5)


def test_recipes_differ_in_one_thing():
    recipes = load("norms_and_activations").RECIPES
    base = recipes["LayerNorm pre GELU"]
    assert all(sum(base[key] != value for key, value in recipe.items()) == 1 for name, recipe in recipes.items() if recipe is not base)


# ---- logit lens ----


def test_lens_equals_hooks(checkpoint):
    """另一条路：用钩子取出每个块的输出，过 final_norm 和 out_head，结果相同。"""
    module = load("logit_lens")
    model, ids = module.GPTModel(TINY).eval(), torch.randint(50257, (1, 9))
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    taken = []
    hooks = [block.register_forward_hook(lambda _module, _inputs, output: taken.append(output)) for block in model.trf_blocks]
    with torch.no_grad():
        logits = model(ids)
        expected = [torch.softmax(model.out_head(model.final_norm(each)), dim=-1)[0] for each in taken]
    for hook in hooks:
        hook.remove()
    probs = module.lens(model, ids)
    assert probs.shape == (4, 9, 50257)
    assert torch.allclose(probs[1:], torch.stack(expected), atol=1e-6) and torch.allclose(probs[-1], torch.softmax(logits, dim=-1)[0], atol=1e-6)


def test_summary_numbers():
    """三个位置、四个词的小表，手算：第 0 层猜对一半、给答案平均 0.35。"""
    probs = torch.tensor([[[0.6, 0.2, 0.1, 0.1], [0.7, 0.1, 0.1, 0.1], [0.4, 0.3, 0.2, 0.1]], [[0.1, 0.1, 0.1, 0.7]] * 3])
    (right, given, same), last = load("logit_lens").summarize(probs, torch.tensor([0, 1]))
    assert (right, given, same) == pytest.approx((0.5, 0.35, 0.0)) and last == pytest.approx((0.0, 0.1, 1.0))


def test_untrained_weights_know_nothing(command_line, checkpoint):
    """权重是随机的，哪一个块也不会让给答案的概率涨起来。"""
    code, out, _ = command_line("logit_lens")
    assert code == 0 and f"模型　{checkpoint}，3 个块" in out and "哪一个块也没有让它涨起来" in out


def test_without_a_trained_model(command_line, tmp_path, monkeypatch):
    """没有训练过的模型：一句话说先运行什么，退出码 2，不画图。"""
    is_file = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda path: path.name != "gpt_mini.pth" and is_file(path))
    code, out, err = command_line("logit_lens")
    assert (code, out) == (2, "") and err == "找不到 gpt_mini.pth，请先运行 python ch05/main/gpt_train.py（约 90 秒）\n" and not (tmp_path / "outputs").exists()


def test_it_finds_the_block_that_knows(command_line, tmp_path, checkpoint):
    """文本全是 " the"，第 2 个块往主路上加 " the" 的方向：涨得最多的就是第 2 个块。"""
    content = torch.load(checkpoint, weights_only=True)
    content["model"]["out_head.weight"][262] *= 5  # 维数少，输出层又是随机的小数，不放大就显不出来
    content["model"]["trf_blocks.1.ff.layers.2.bias"] += 100 * content["model"]["out_head.weight"][262]  # 262 是 " the"
    torch.save(content, tmp_path / "gpt_mini.pth")
    (tmp_path / "the.txt").write_text(" the" * 100, encoding="utf-8")
    code, out, _ = command_line("logit_lens", "--text", tmp_path / "the.txt", trained=tmp_path / "gpt_mini.pth")
    assert code == 0 and "✗" not in out and "涨得最多的是第 2 个块" in out


def test_prompt_with_dollar_and_newline(command_line):
    """$ 在图里会被当作公式、换行会撑破格子、半个汉字没有字形：都要能画。"""
    code, out, err = command_line("logit_lens", "--prompt", "a $5$ and\nb_{^ 饕")
    assert (code, err) == (0, "") and "✗" not in out
