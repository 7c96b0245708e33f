"""第 4 章实验的测试：GQA、SWA、MLA、MoE、门控 DeltaNet。

组件与 llms_from_scratch、transformers 和 PyTorch 自己的注意力比较；缓存量真的张量；书中的数字逐个核对；用错时的报错。
运行：python -m pytest ch04/tests/test_experiments_04b.py
"""

import functools
import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parent.parent / "experiments"
NAMES = ["gqa", "swa", "mla", "moe"]
CONFIG = {"vocab_size": 30, "context_length": 24, "emb_dim": 32, "n_heads": 4, "n_layers": 3, "drop_rate": 0.0, "qkv_bias": False}
EXTRA = {  # 每个脚本的模型要多给的配置：一种有缓存的，一种退化成普通 GPT 的
    "gqa": ({"n_kv_groups": 2}, {"n_kv_groups": 4}),
    "swa": ({"sliding_window_size": 4, "sliding_window_stride": 2}, {"sliding_window_size": 4, "sliding_window_stride": 0}),
    "moe": (None, None),
    "gated_deltanet": ({"deltanet_stride": 2, "chunk_size": 5}, {"deltanet_stride": 0, "chunk_size": 5}),
}
CACHED = ["gqa", "swa", "gated_deltanet"]


@functools.cache
def load(name):
    """按路径导入一个实验。"""
    spec = importlib.util.spec_from_file_location(f"exp_{name}", FOLDER / f"exp_{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def command_line(monkeypatch, capsys):
    """command_line(实验, 参数…) → 退出码、stdout、stderr；在本进程里跑，省去导入 PyTorch 的几秒。"""

    def call(name, *args):
        monkeypatch.setattr(sys, "argv", [f"exp_{name}.py", *map(str, args)])
        code = 0
        try:
            load(name).main()
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def book():
    return pytest.importorskip("llms_from_scratch", reason="没有装 llms-from-scratch，无法与它比较")


def seeded(seed=123):
    torch.manual_seed(seed)


# ---------- 每个脚本，像读者那样运行 ----------


@pytest.mark.parametrize("name", NAMES)
def test_runs_as_a_reader_would(name, tmp_path):
    """从别的文件夹、没有原书数据，各跑一遍：退出码 0，自查全过，没有警告（图里缺字也会警告），画了图，不留别的文件。"""
    env = {key: value for key, value in os.environ.items() if key != "LLM_DATA_DIR"}
    env |= {"PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"}
    picture = FOLDER.parent / "outputs" / f"{name}.png"
    before = picture.stat().st_mtime_ns if picture.exists() else 0
    done = subprocess.run([sys.executable, str(FOLDER / f"exp_{name}.py"), "--quick", "--steps", "2"], cwd=tmp_path, env=env, capture_output=True, encoding="utf-8", timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert "✗" not in done.stdout and done.stdout.count("✓") >= 5
    assert "story-en.txt" in done.stdout and ("所以" in done.stdout or "训练太短：看流程，不下结论" in done.stdout)
    assert picture.stat().st_mtime_ns > before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "args", "says"),
    [
        ("gqa", ["--groups", 3], "8 个头不能平均分成 3 组"),
        ("gqa", ["--groups", 0], "不能平均分成 0 组"),
        ("gqa", ["--groups", 16], "不能平均分成 16 组"),
        *[(name, ["--seeds", number], f"--seeds 应在 5 到 10 之间，不能是 {number}") for name in ("gqa", "mla") for number in (4, 11)],
        ("swa", ["--window", 0], "--window 应在 1 到 32 之间，不能是 0"),
        ("swa", ["--seeds", 4], "--seeds 应在 5 到 10 之间，不能是 4"),
        ("swa", ["--window", -4], "不能是 -4"),
        ("swa", ["--layers", "四"], "invalid int value"),
        ("mla", ["--latent", 0], "--latent 应在 1 到 64"),
        ("mla", ["--latent", 8, 65], "不能是 65"),
        ("moe", ["--top-k", 9], "--top-k 应在 1 到 8 之间，不能是 9"),
        ("moe", ["--experts", 0], "--experts 应在 1 到 64"),
        ("moe", ["--balance", -1], "--balance 应在 0 到 100"),
        ("moe", ["--seeds", 11], "--seeds 应在 5 到 10 之间，不能是 11"),
        ("moe", ["--balance", "nan"], "--balance 应在 0 到 100"),
        *[(name, ["--steps", 0], "--steps 应在 1 到 100000") for name in NAMES],
        *[(name, ["--seed", -1], "--seed") for name in NAMES],
        *[(name, ["--epochs", 3], "unrecognized arguments") for name in NAMES],
    ],
)
def test_bad_arguments(command_line, name, args, says):
    code, out, err = command_line(name, *args)
    assert (code, out) == (2, "")
    assert says in err.splitlines()[-1] and "Traceback" not in err


@pytest.mark.parametrize("name", NAMES)
def test_help(command_line, name):
    code, out, _ = command_line(name, "--help")
    assert code == 0 and "--quick" in out and "实验　" in out


# ---------- 带缓存的模型，共同的性质 ----------


@pytest.mark.parametrize("name", CACHED)
def test_plain_setting_is_the_books_model(name, book):
    """退化成普通多头注意力的那个配置，与 llms_from_scratch 的 GPTModel 在同一份权重下 logits 相同。"""
    from llms_from_scratch.ch04 import GPTModel

    seeded()
    ours, theirs = load(name).GPTModel(CONFIG | EXTRA[name][1]).eval(), GPTModel(CONFIG).eval()
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not unexpected and all(key.endswith("att.mask") for key in missing)
    ids = torch.randint(30, (2, 24))
    assert torch.allclose(ours(ids), theirs(ids), atol=1e-5)


@pytest.mark.parametrize("name", CACHED)
@pytest.mark.parametrize("sizes", [[24], [1] * 24, [7, 1, 1, 9, 6], [23, 1]])
def test_cache_does_not_change_the_output(name, sizes):
    seeded()
    model = load(name).GPTModel(CONFIG | EXTRA[name][0]).eval()
    ids = torch.randint(30, (2, 24))
    with torch.no_grad():
        for _ in range(2):  # 第二遍：清空之后，与第一遍相同
            model.reset_kv_cache()
            pieces = torch.cat([model(piece, use_cache=True) for piece in ids.split(sizes, dim=1)], dim=1)
            assert torch.allclose(pieces, model(ids), atol=1e-5)
        with pytest.raises(ValueError, match="超过了模型的上下文长度"):
            model(ids[:, :1], use_cache=True)


@pytest.mark.parametrize("name", CACHED)
def test_future_does_not_leak(name):
    seeded()
    model = load(name).GPTModel(CONFIG | EXTRA[name][0]).eval()
    ids = torch.randint(30, (1, 24))
    changed = ids.clone()
    changed[0, 15:] = (changed[0, 15:] + 1) % 30
    first, second = model(ids), model(changed)
    assert torch.allclose(first[:, :15], second[:, :15], atol=1e-6) and not torch.allclose(first[:, 15:], second[:, 15:], atol=1e-3)


# ---------- GQA ----------


def test_gqa_estimate():
    calc = load("gqa").calc_kv_bytes_total
    assert [f"{calc(1, 32768, 4096, 32, kv, 32, 2) / 1e9:.2f}" for kv in (32, 8)] == ["17.18", "4.29"]
    assert calc(1, 32768, 4096, 32, 32, 32, 2) / calc(1, 32768, 4096, 32, 8, 32, 2) == 4
    assert calc(3, 10, 64, 8, 2, 5, 4) == 3 * 10 * 8 * 2 * 2 * 5 * 4


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_gqa_equals_torch_and_the_book(groups, book):
    from llms_from_scratch.qwen3 import GroupedQueryAttention

    seeded()
    ours = load("gqa").GroupedQueryAttention(32, 32, 0.0, 4, groups)
    x = torch.randn(2, 10, 32)
    q, k, v = (linear(x).view(2, 10, -1, 8).transpose(1, 2) for linear in (ours.W_query, ours.W_key, ours.W_value))
    context = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    assert torch.allclose(ours(x), ours.out_proj(context.transpose(1, 2).reshape(2, 10, 32)), atol=1e-5)
    theirs = GroupedQueryAttention(32, 4, groups)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    mask = torch.ones(10, 10, dtype=torch.bool).triu(1)
    assert torch.allclose(ours(x) - ours.out_proj.bias, theirs(x, mask, torch.ones(10, 8), torch.zeros(10, 8)), atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_gqa_cache_is_as_large_as_estimated(groups):
    module = load("gqa")
    model = module.GPTModel(CONFIG | {"n_kv_groups": groups}).eval()
    model(torch.randint(30, (2, 5)), use_cache=True)
    model(torch.randint(30, (2, 4)), use_cache=True)
    measured = sum(each.untyped_storage().nbytes() for block in model.trf_blocks for each in (block.att.cache_k, block.att.cache_v))
    assert measured == module.calc_kv_bytes_total(2, 9, 32, 4, groups, 3, 4)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_gqa_step_with_a_preallocated_cache(groups):
    module = load("gqa")
    seeded()
    attention, x = module.GroupedQueryAttention(32, 32, 0.0, 4, groups), torch.randn(3, 9, 32)
    attention(x[:, :8], use_cache=True)
    cache = torch.full((2, 3, groups, 9, 8), torch.nan)
    cache[:, :, :, :8] = torch.stack([attention.cache_k, attention.cache_v]).detach()
    with torch.no_grad():
        assert torch.allclose(module.decode_step(attention, cache, x[:, 8:], 8), attention(x)[:, 8:], atol=1e-5)
        attention.reset_cache()


def test_gqa_pooling():
    """每组连续的 h/g 个头并成一份；并成 h 份就是什么都没做。"""
    pool, weight = load("gqa").pool_heads, torch.arange(24.0).view(8, 3)  # 4 个头，每个头 2 行
    assert torch.equal(pool(weight, 4, 4, True), weight) and torch.equal(pool(weight, 4, 4, False), weight)
    assert torch.equal(pool(weight, 4, 2, False), weight[[0, 1, 4, 5]])
    assert torch.equal(pool(weight, 4, 2, True), (weight[[0, 1, 4, 5]] + weight[[2, 3, 6, 7]]) / 2)
    assert torch.equal(pool(weight, 4, 1, True), weight.view(4, 2, 3).mean(dim=0))


def test_gqa_uptraining_starts_from_the_checkpoint(tmp_path):
    """并成 h 份接着练，起点就是训练完的损失；并成 1 份，起点比它高，比没训练过的低。"""
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat and the dog ran. " * 60, encoding="utf-8")
    result = load("gqa").train_once(str(text), 8, 8, 20, 1)
    assert result["mean"] == result["first"] and result["mean"][0][1] == pytest.approx(result["curve"][-1][1], abs=1e-5)
    pooled = load("gqa").train_once(str(text), 8, 1, 20, 1)
    assert pooled["curve"] == result["curve"] and pooled["mean"][-1][0] == 1
    assert result["curve"][-1][1] < pooled["mean"][0][1] < result["curve"][0][1]


def test_times_are_compared_by_their_middle_halves():
    module = load("gqa")
    says = [module.compare_times(each, [3.0, 4.0, 5.0]) for each in ([1.0, 2.0, 2.9], [1.0, 2.0, 3.1], [5.1, 6.0, 7.0], [4.9, 6.0, 7.0])]
    assert says == ["更快", "分不出", "更慢", "分不出"]
    order = []
    times = module.interleaved({name: functools.partial(order.append, name) for name in "ab"}, 4)
    assert order == ["a", "b"] * 7 and all(each[0] <= each[1] <= each[2] for each in times.values())


# ---------- SWA ----------


def test_swa_estimate():
    module = load("swa")
    sizes = [module.estimate_totals(32768, 1024, stride, 4096, 32, kv, 32) / 1e9 for stride in (0, 5) for kv in (32, 8)]
    assert [f"{size:.2f}" for size in sizes] == ["17.18", "4.29", "3.14", "0.78"]
    model = module.GPTModel(CONFIG | {"n_layers": 32, "sliding_window_size": 4, "sliding_window_stride": 5})
    windows = [block.att.sliding_window_size for block in model.trf_blocks]
    assert windows.count(4) == 27 and windows[:6] == [4] * 5 + [None]


@pytest.mark.parametrize("window", [1, 3, 10, 50])
def test_swa_equals_torch_with_a_mask(window, book):
    seeded()
    ours = load("swa").MultiHeadAttentionWithSWA(32, 32, 0.0, 4, sliding_window_size=window)
    x = torch.randn(2, 10, 32)
    visible = torch.tensor([[0 <= i - j < window for j in range(10)] for i in range(10)])
    q, k, v = (linear(x).view(2, 10, 4, 8).transpose(1, 2) for linear in (ours.W_query, ours.W_key, ours.W_value))
    context = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=visible)
    assert torch.allclose(ours(x), ours.out_proj(context.transpose(1, 2).reshape(2, 10, 32)), atol=1e-5)
    if window >= 10:
        from llms_from_scratch.ch03 import MultiHeadAttention

        theirs = MultiHeadAttention(32, 32, 10, 0.0, 4)
        theirs.load_state_dict(ours.state_dict(), strict=False)
        assert torch.allclose(ours(x), theirs(x), atol=1e-5)


@pytest.mark.parametrize("stride", [-1, 0, 2])
def test_swa_cache_is_as_large_as_estimated(stride):
    module = load("swa")
    model = module.GPTModel(CONFIG | {"sliding_window_size": 4, "sliding_window_stride": stride})
    sizes = module.cache_growth(model, torch.randint(30, (1, 24)))
    assert sizes == [module.estimate_totals(n, 4, stride, 32, 4, 4, 3, bytes_per_elem=4) for n in range(1, 25)]


def test_swa_reach_grows_with_layers():
    module = load("swa")
    for layers, window in [(1, 4), (3, 4), (3, 1), (2, 12)]:
        model = module.GPTModel(CONFIG | {"n_layers": layers, "sliding_window_size": window, "sliding_window_stride": -1})
        reach = module.influence(model, torch.randint(30, (1, 24)))
        assert sum(each > 0 for each in reach) == min(24, layers * (window - 1) + 1)


# ---------- MLA ----------


def test_mla_estimate():
    module = load("mla")
    mha, gqa, mla = module.calc_kv_bytes_total(1, 8192, 2048, 24, 24, 48, 2), module.calc_kv_bytes_total(1, 8192, 2048, 24, 6, 48, 2), module.mla_bytes_total(1, 8192, 48, 1024, 2)
    assert [f"{each / 1e9:.2f}" for each in (mha, gqa, mla)] == ["3.25", "0.81", "0.81"]
    assert (f"{mha / gqa:.2f}", f"{mha / mla:.2f}", f"{1 - mla / mha:.2%}") == ("4.00", "4.03", "75.19%")


@pytest.mark.parametrize("absorb", [False, True])
@pytest.mark.parametrize("rank", [32, 6])
def test_mla_compressed_to_full_rank_is_the_books_mha(absorb, rank, book):
    """r = d 时与原来的多头注意力相同；r = 6 时与键、值的权重被截到秩 6 的多头注意力相同。"""
    from llms_from_scratch.ch03 import MultiHeadAttention

    seeded()
    theirs = MultiHeadAttention(32, 32, 10, 0.0, 4)
    x = torch.randn(2, 10, 32)
    latent = load("mla").compress(theirs, rank)
    latent.absorb = absorb
    assert latent.W_DKV.weight.shape == (rank, 32)
    if rank < 32:
        assert not torch.allclose(latent(x), theirs(x), atol=1e-3)
        left, sizes, right = torch.linalg.svd(torch.cat([theirs.W_key.weight, theirs.W_value.weight]).detach(), full_matrices=False)
        truncated = left @ torch.diag(sizes * (torch.arange(32) < rank)) @ right
        theirs.load_state_dict(theirs.state_dict() | {"W_key.weight": truncated[:32], "W_value.weight": truncated[32:]})
    assert torch.allclose(latent(x), theirs(x), atol=1e-4)


@pytest.mark.parametrize("absorb", [False, True])
@pytest.mark.parametrize("sizes", [[24], [1] * 24, [7, 1, 1, 9, 6]])
def test_mla_cache_does_not_change_the_output(absorb, sizes):
    module = load("mla")
    assert module.MultiHeadLatentAttention(32, 32, 0.0, 4).latent_dim == 16  # 原书：max(16, d_out // 8)
    assert module.MultiHeadLatentAttention(256, 256, 0.0, 4).latent_dim == 32
    seeded()
    attention, x = module.MultiHeadLatentAttention(32, 32, 0.0, 4, latent_dim=8), torch.randn(2, 24, 32)
    expanded, attention.absorb = attention(x), absorb
    for _ in range(2):  # 第二遍：清空之后，与第一遍相同
        attention.reset_cache()
        assert torch.allclose(torch.cat([attention(part, use_cache=True) for part in x.split(sizes, dim=1)], dim=1), expanded, atol=1e-5)
    assert attention.cache_c_kv.untyped_storage().nbytes() == module.mla_bytes_total(2, 24, 1, 8, 4)
    kept = [name for name, value in vars(attention).items() if isinstance(value, torch.Tensor)]
    assert kept == ["cache_c_kv"], "除了压缩包，什么都不存"
    changed = x.clone()
    changed[:, 15:] += 1
    assert torch.allclose(attention(changed)[:, :15], expanded[:, :15], atol=1e-5)  # 看不见未来


def test_mla_model_is_the_books_model_with_another_attention(book):
    """份数等于头数的模型，与 llms_from_scratch 的 GPTModel 在同一份权重下 logits 相同；换了注意力，别处的初始权重不变。"""
    from llms_from_scratch.ch04 import GPTModel

    module = load("mla")
    models = [module.build_model(30, *kind, seed=1) for kind in [(8, None), (1, None), (1, 16)]]
    for other in models[1:]:
        assert all(torch.equal(each, other.state_dict()[name]) for name, each in models[0].state_dict().items() if ".att." not in name)
    theirs = GPTModel(module.CONFIG | {"vocab_size": 30}).eval()
    missing, unexpected = theirs.load_state_dict(models[0].state_dict(), strict=False)
    assert not unexpected and all(key.endswith("att.mask") for key in missing)
    ids = torch.randint(30, (2, 32))
    assert torch.allclose(models[0].eval()(ids), theirs(ids), atol=1e-5)


@pytest.mark.parametrize("absorb", [False, True])
def test_mla_step_with_a_preallocated_cache(absorb):
    module = load("mla")
    seeded()
    attention, x = module.MultiHeadLatentAttention(32, 32, 0.0, 4, latent_dim=8), torch.randn(3, 9, 32)
    cache = torch.full((3, 9, 8), torch.nan)
    cache[:, :8] = attention.W_DKV(x[:, :8]).detach()
    with torch.no_grad():
        assert torch.allclose(module.latent_step(attention, cache, x[:, 8:], 8, absorb), attention(x)[:, 8:], atol=1e-5)


def test_rope_and_what_cannot_be_absorbed():
    """点积只看隔多远；整个键都旋转就吸收不了，另留一小段就行；没有那一小段，就不知道位置。"""
    module = load("mla")
    seeded()
    query, key = torch.randn(2, 1, 8, dtype=torch.float64)
    far = [(module.rope(query, m) * module.rope(key, n)).sum().item() for m, n in [(5, 2), (105, 102), (3, 0), (5, 3)]]
    assert far[0] == pytest.approx(far[1]) == pytest.approx(far[2]) and abs(far[0] - far[3]) > 1e-3
    assert module.rope(query).equal(query) and module.rope(query, 7).norm().item() == pytest.approx(query.norm().item())
    errors = module.rope_errors()
    right = [name for name, error in errors.items() if error < 1e-9]
    assert right == ["不旋转，吸收", "整个键都旋转，每个距离各吸收一次", "另留一小段旋转，吸收", "整段挪后 100 个位置"]
    assert errors["整个键都旋转，吸收"] > 0.1 and errors["旋转的那一段让分数变了"] > 0.1
    assert module.rope_errors(extra=0)["旋转的那一段让分数变了"] < 1e-9


# ---------- MoE ----------


def moe_layers(experts, top_k, hidden=24):
    from llms_from_scratch.qwen3 import MoEFeedForward

    cfg = {"emb_dim": 32, "hidden_dim": hidden, "moe_intermediate_size": hidden, "num_experts": experts, "num_experts_per_tok": top_k, "dtype": torch.float32}
    seeded()
    ours, theirs = load("moe").MoEFeedForward(cfg), MoEFeedForward(cfg)
    theirs.load_state_dict(ours.state_dict(), assign=True)
    return ours, theirs


@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (4, 1), (4, 4), (1, 1)])
def test_moe_equals_the_book(experts, top_k, book):
    """输出和各个参数的梯度都相同：原书的 qwen3 版把每个专家都算一遍再乘概率，写法完全不同。"""
    ours, theirs = moe_layers(experts, top_k)
    x = torch.randn(2, 10, 32)
    first, second = ours(x), theirs(x)
    assert torch.allclose(first, second, atol=1e-5)
    gradients = [torch.autograd.grad(out.square().sum(), list(layer.parameters()), allow_unused=True, materialize_grads=True) for out, layer in [(first, ours), (second, theirs)]]
    assert all(torch.allclose(one, two, atol=1e-4) for one, two in zip(*gradients))


def test_moe_with_one_expert_is_the_books_feed_forward(book):
    from llms_from_scratch.qwen3 import FeedForward

    seeded()
    ours = load("moe").MoEFeedForward({"emb_dim": 32, "hidden_dim": 24, "num_experts": 1, "num_experts_per_tok": 1})
    theirs = FeedForward({"emb_dim": 32, "hidden_dim": 24, "dtype": torch.float32})
    theirs.load_state_dict({key.replace(".0.", "."): value for key, value in ours.state_dict().items() if key != "gate.weight"})
    dense = load("moe").FeedForward({"emb_dim": 32, "hidden_dim": 24})
    dense.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 10, 32)
    assert torch.allclose(ours(x), theirs(x), atol=1e-6) and torch.allclose(dense(x), theirs(x), atol=1e-6)


def test_moe_estimate():
    estimate = load("moe").estimate_params_and_hidden
    assert list(estimate(7168, 14336, 8, 2, match_dense=True).values()) == [308281344, 38535168, 57344, 308338688, 77127680, 1792]
    assert estimate(32, 24, 5, 2, match_dense=True)["moe_hidden_dim"] == 4  # (2304 − 160) / 480 = 4.47；忘了减路由就是 5
    layer = load("moe").MoEFeedForward({"emb_dim": 32, "hidden_dim": 24, "num_experts": 5, "num_experts_per_tok": 2})
    numbers = estimate(32, 24, 5, 2)
    assert sum(p.numel() for p in layer.parameters()) == numbers["moe_total"]
    assert sum(p.nbytes for p in layer.parameters()) == 4 * numbers["moe_total"]
    assert numbers["active"] == 32 * 5 + 2 * 3 * 32 * 24


def test_moe_load_and_balance_loss():
    layer = load("moe").MoEFeedForward({"emb_dim": 32, "hidden_dim": 24, "num_experts": 4, "num_experts_per_tok": 1})
    x = torch.randn(4, 50, 32)
    layer.gate.weight.data.zero_()
    layer.gate.weight.data[2] = 100 * x.mean(dim=(0, 1)) / x.mean(dim=(0, 1)).norm()
    x = x.mean(dim=(0, 1)).expand(4, 50, 32) * 1e3  # 所有词元都一样，都选第 2 个专家
    layer(x)
    assert layer.load.tolist() == [0, 0, 1, 0] and layer.balance_loss.item() == pytest.approx(4)
    layer.gate.weight.data.copy_(torch.eye(4, 32) * 50)
    layer(torch.eye(4, 32).repeat(5, 1)[None])  # 四种词元一样多，各去各的专家
    assert layer.load.tolist() == [0.25] * 4 and layer.balance_loss.item() == pytest.approx(1, abs=1e-3)
    layer.balance_loss.backward()
    assert layer.gate.weight.grad is not None and layer.fc1[0].weight.grad is None


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_moe_balance_loss_is_worst_at_e_over_j(top_k):
    """每个词元都挑同样的 j 个：占比各 1 / j，均衡损失是 e / j。"""
    layer = load("moe").MoEFeedForward({"emb_dim": 32, "hidden_dim": 24, "num_experts": 8, "num_experts_per_tok": top_k})
    with torch.no_grad():
        layer.gate.weight.zero_()[:top_k] = 9.0
        layer(torch.ones(2, 7, 32))
    assert layer.balance_loss.item() == pytest.approx(8 / top_k, abs=1e-4)


def test_moe_router_trap():
    """只挑一个、只在选中的里 softmax：路由的梯度正好是 0；取全部专家的 softmax 就不是。"""
    def gradient(top_k, norm):
        seeded()
        layer = load("moe").MoEFeedForward({"emb_dim": 32, "hidden_dim": 24, "num_experts": 8, "num_experts_per_tok": top_k, "norm_topk_prob": norm})
        layer(torch.randn(2, 10, 32)).square().sum().backward()
        return layer.gate.weight.grad.norm().item()

    assert gradient(1, True) == 0 and gradient(1, False) > 1e-3 and gradient(2, True) > 1e-3 and gradient(2, False) > 1e-3


@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (8, 1)])
def test_moe_with_the_softmax_of_all_experts(experts, top_k):
    """norm_topk_prob=False：乘的是全部专家的 softmax 里的那一份，加起来不到 1。"""
    seeded()
    layer = load("moe").MoEFeedForward({"emb_dim": 32, "hidden_dim": 24, "num_experts": experts, "num_experts_per_tok": top_k, "norm_topk_prob": False})
    x = torch.randn(2, 10, 32)
    share, chosen = torch.softmax(layer.gate(x), dim=-1).topk(top_k)
    every = torch.stack([layer.fc3[i](torch.nn.functional.silu(layer.fc1[i](x)) * layer.fc2[i](x)) for i in range(experts)], dim=2)
    expected = (every.gather(2, chosen[..., None].expand(-1, -1, -1, 32)) * share[..., None]).sum(dim=2)
    assert torch.allclose(layer(x), expected, atol=1e-5)


# ---------- 门控 DeltaNet ----------


@pytest.mark.parametrize("chunk", [1, 7, 16, 64])
def test_delta_rule_equals_transformers(chunk):
    """循环和分块，都与 transformers 里 Qwen3-Next 的两个参考实现相同，黑板也相同。"""
    reference = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next", reason="没有装 transformers，无法与它比较")
    module = load("gated_deltanet")
    seeded()
    queries, keys, values, alpha, beta, state = module.random_inputs(2, 3, 50, 16)
    swapped = [each.transpose(1, 2) for each in (queries * 16**0.5, keys, values, alpha, beta)]  # 它自己会除以 √k
    wanted = [
        reference.torch_chunk_gated_delta_rule(*swapped, chunk_size=16, initial_state=state, output_final_state=True),
        reference.torch_recurrent_gated_delta_rule(*swapped, initial_state=state, output_final_state=True),
    ]
    for output, last in [module.recurrent_gated_delta_rule(queries, keys, values, alpha, beta, state), module.chunked_gated_delta_rule(queries, keys, values, alpha, beta, state, chunk)]:
        for theirs, theirs_last in wanted:
            assert torch.allclose(output.transpose(1, 2), theirs, atol=1e-4) and torch.allclose(last, theirs_last, atol=1e-4)


def test_chunked_gradients_equal_recurrent_ones():
    module = load("gated_deltanet")
    seeded()
    inputs = [each.requires_grad_() for each in module.random_inputs(1, 2, 20, 8)]
    gradients = [torch.autograd.grad(output.square().sum(), inputs) for output, _ in (module.recurrent_gated_delta_rule(*inputs), module.chunked_gated_delta_rule(*inputs, 6))]
    assert all(torch.allclose(one, two, atol=1e-3, rtol=1e-3) for one, two in zip(*gradients))


def test_long_decay_does_not_overflow():
    """一块里衰减得极快时，遮住之前就取指数会得到 inf：输出也许碰巧对，梯度却成了 nan。"""
    module = load("gated_deltanet")
    seeded()
    inputs = module.random_inputs(1, 2, 64, 8)
    inputs[3] = (inputs[3] * 100).requires_grad_()
    output, state = module.chunked_gated_delta_rule(*inputs, 64)
    assert output.isfinite().all() and torch.allclose(output, module.recurrent_gated_delta_rule(*inputs)[0], atol=1e-4)
    (gradient,) = torch.autograd.grad(output.sum() + state.sum(), inputs[3])
    assert gradient.isfinite().all()


def test_delta_rule_becomes_plain_linear_attention():
    """不忘、全力写、键互相垂直：与没有 softmax 的因果注意力相同。"""
    module = load("gated_deltanet")
    keys = torch.linalg.qr(torch.randn(1, 2, 8, 8))[0]
    queries, values = torch.randn(2, 1, 2, 8, 8)
    mask = torch.ones(8, 8).tril()
    wanted = torch.einsum("bhik,bhjk,ij,bhjv->bhiv", queries, keys, mask, values)
    for rule in (module.recurrent_gated_delta_rule, functools.partial(module.chunked_gated_delta_rule, chunk_size=3)):
        assert torch.allclose(rule(queries, keys, values, torch.zeros(1, 2, 8), torch.ones(1, 2, 8), torch.zeros(1, 2, 8, 8))[0], wanted, atol=1e-4)


def test_deltanet_estimate():
    """公式与原书仓库相同：每层 b·n·h·k·2·字节，和 b·h·k²·字节。"""
    module = load("gated_deltanet")
    assert module.kv_bytes_total_mha(1, 131072, 2048, 48, 2, 16) == 131072 * 16 * 128 * 2 * 2 * 48
    assert module.kv_bytes_total_deltanet_no_conv(1, 2048, 48, 2, 16) == 16 * 128 * 128 * 2 * 48
    assert module.kv_bytes_total_mha(1, 64, 2048, 1, 2, 16) == module.kv_bytes_total_deltanet_no_conv(1, 2048, 1, 2, 16)  # k / 2 个词元时一样大


@pytest.mark.parametrize(("stride", "boards"), [(0, 0), (-1, 3), (2, 2)])
def test_deltanet_cache_is_as_large_as_estimated(stride, boards):
    module = load("gated_deltanet")
    model = module.GPTModel(CONFIG | {"deltanet_stride": stride, "chunk_size": 5})
    sizes = module.cache_sizes(model, torch.randint(30, (1, 24)))
    wanted = [module.kv_bytes_total_mha(1, n, 32, 3 - boards, 4, 4) + module.kv_bytes_total_deltanet_no_conv(1, 32, boards, 4, 4) for n in range(1, 25)]
    assert sizes == wanted


# ---------- 共用的训练 ----------


def test_training_learns_and_sees_the_same_batches():
    module = load("gqa")
    ids, cfg = torch.arange(600) % 7, CONFIG | {"n_kv_groups": 1}
    curves = []
    for _ in range(2):
        seeded()
        model = module.GPTModel(cfg)
        torch.rand(3)  # 建模型之后再动全局的随机数，不应影响看到的批
        curves.append(module.train(model, ids[:500], ids[500:], 24, 30, 1))
    assert curves[0] == curves[1]
    assert abs(curves[0][0][1] - math.log(30)) < 1 and curves[0][-1][1] < 0.5
