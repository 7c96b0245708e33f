"""exp_gpt_to_llama、exp_llama_sizes、exp_llama_weights：与 transformers、llms-from-scratch 的 Llama 相同；装不进的、装不下的，都用一句话拒绝。

运行：python -m pytest ch05/tests/test_models_llama.py
不联网：模型都是当场造的极小的一个，由 transformers 存成文件，再由我们读。
"""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[1] / "experiments"
STRETCH = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
SHAPES = [
    {"num_key_value_heads": 2, "rope_parameters": STRETCH, "rms_norm_eps": 1e-3},  # Llama 3.1：GQA，拉长上下文
    {"num_key_value_heads": 4, "tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}},  # 多头，共用输出层
]


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def steps():
    return load("exp_gpt_to_llama")


@pytest.fixture(scope="module")
def hub():
    return load("exp_llama_weights")


def theirs(**changes):
    """transformers 的一个小 Llama；归一化的缩放不全是 1，装反了才看得出来。"""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(vocab_size=120, hidden_size=48, num_attention_heads=4, num_hidden_layers=2, intermediate_size=80, max_position_embeddings=128, initializer_range=0.2, bos_token_id=None, eos_token_id=None, **changes)
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def command(module, monkeypatch, *args):
    """像在命令行里那样运行，线程数用完改回来。"""
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, args)])
    try:
        module.main()
    finally:
        torch.set_num_threads(threads)


def says(module, monkeypatch, capsys, *args):
    """应当被拒绝：退出码 2，返回 stderr 的最后一行。"""
    with pytest.raises(SystemExit) as stopped:
        command(module, monkeypatch, *args)
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("shard", ["30KB", "1GB"], ids=["分成几份", "一个文件"])
@pytest.mark.parametrize("changes", SHAPES, ids=["GQA", "MHA"])
def test_equal_to_transformers(hub, tmp_path, changes, shard):
    expected = theirs(**changes)
    expected.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").is_file() == (shard == "30KB")
    ours = hub.load_llama(tmp_path, torch.float32)
    ids = torch.randint(120, (2, 70), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert (ours(ids) - expected(ids).logits).abs().max() < 1e-4
    text = expected.generate(ids[:1, :20], max_new_tokens=30, do_sample=False, pad_token_id=0)
    assert torch.equal(hub.generate(ours, ids[:1, :20], 30, 128), text)
    tied = changes.get("tie_word_embeddings", False)
    assert (ours.out_head.weight is ours.tok_emb.weight) == tied and not any(p.is_meta for p in [*ours.parameters(), *ours.buffers()])
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in expected.parameters())


def test_half_precision_equals_transformers(hub, tmp_path):
    """bfloat16：归一化先变宽再算，与 transformers 一样，差的只是末位的舍入。"""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    expected = theirs(**SHAPES[0])
    expected.save_pretrained(tmp_path)
    ours, ids = hub.load_llama(tmp_path, torch.bfloat16), torch.arange(60)[None]
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        wide, half, same = expected(ids).logits, expected.bfloat16()(ids).logits.float(), ours(ids).float()
    assert (same - wide).abs().mean() < 1.5 * (half - wide).abs().mean()
    norm, x = LlamaRMSNorm(48, eps=1e-5).bfloat16(), (100 * torch.randn(9, 48)).bfloat16()
    assert torch.equal(hub.RMSNorm(48).bfloat16()(x), norm(x))


def test_both_ends_equal_the_book(steps):
    """第 0 步就是书里的 GPTModel，最后一步就是原书仓库的 Llama3Model。"""
    from llms_from_scratch.ch04 import GPTModel
    from llms_from_scratch.llama3 import Llama3Model

    ids = torch.randint(97, (2, 20), generator=torch.Generator().manual_seed(2))
    first, gpt = steps.MixedModel(steps.TINY, 0).eval(), GPTModel(steps.TINY).eval()
    gpt.load_state_dict({name.replace(".ff.", ".ff.layers."): value for name, value in first.state_dict().items()})
    last, llama = steps.LlamaModel(steps.TINY), Llama3Model(steps.TINY | {"dtype": torch.float32})
    llama.load_state_dict({name.replace(".scale", ".weight"): value for name, value in last.state_dict().items()})
    with torch.no_grad():
        torch.testing.assert_close(first(ids), gpt(ids), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(last(ids), llama(ids), atol=1e-5, rtol=1e-5)


def test_steps_run(steps, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(steps, "OUTPUTS", tmp_path)
    command(steps, monkeypatch, "--quick")
    out = capsys.readouterr().out
    assert "✗" not in out and out.count("✓") == 9, out
    for number in ["163,009,536", "6,738,415,616", "-805,306,368", "512 KB", "128 KB"]:
        assert number in out.split("这个数字对吗")[0]
    assert (tmp_path / "gpt_to_llama.png").is_file()


def test_last_step_is_llama(steps):
    """换完五样，名字、形状、logits 与 LlamaModel 的都相同；没有换完的，都不同。"""
    torch.manual_seed(1)
    llama, ids = steps.LlamaModel(steps.TINY).eval(), torch.arange(20)[None]
    for step in range(6):
        torch.manual_seed(1)
        model = steps.MixedModel(steps.TINY, step).eval()
        same = [(name, p.shape) for name, p in model.named_parameters()] == [(name, p.shape) for name, p in llama.named_parameters()]
        with torch.no_grad():
            assert (same and torch.equal(model(ids), llama(ids))) == (step == 5), step


def test_sizes_run(monkeypatch, capsys, tmp_path):
    """缓存追上权重的地方：用公布的个数另算一遍；句子多 8 倍，就早 8 倍。"""
    sizes = load("exp_llama_sizes")
    monkeypatch.setattr(sizes, "OUTPUTS", tmp_path)
    met = {}
    for batch in (1, 8):
        command(sizes, monkeypatch, "--batch", batch)
        out = capsys.readouterr().out
        assert "✗" not in out and out.count("✓") == 6, out
        table = out.split("这个数字对吗")[0]
        for number in ["6,738,415,616", "8,030,261,248", "1,498,482,688", "1,235,814,400", "59.84", "29.92", "11.23", "5.61", "+1,308,622,848"]:
            assert number in table
        met[batch] = [int(number.replace(",", "")) for number in re.findall(r"^ +([\d,]+)　Llama.*上下文是", table, re.MULTILINE)]
    count, one = [6_738_415_616, 8_030_261_248, 8_030_261_248, 1_235_814_400], [2 * 32 * 32 * 128, 2 * 32 * 8 * 128, 2 * 32 * 8 * 128, 2 * 16 * 8 * 64]
    assert met == {batch: [round(weights / (batch * numbers)) for weights, numbers in zip(count, one)] for batch in (1, 8)}
    assert (tmp_path / "llama_sizes.png").is_file()
    assert "--batch 应在 1 到 10000 之间" in says(sizes, monkeypatch, capsys, "--batch", 0)


@pytest.mark.parametrize(
    ("name", "old", "new", "cross"),
    [
        ("RMSNorm", "wide.pow(2).mean(", "wide.var(", "①"),
        ("FeedForward", "silu(self.fc1(x)) * self.fc2(x)", "silu(self.fc2(x)) * self.fc1(x)", "②"),
        ("apply_rope", "turned = torch.cat([-second, first], dim=-1)", "turned = torch.cat([second, first], dim=-1)", "④ RoPE"),
        ("GroupedQueryAttention", "repeat_interleave(self.num_heads // self.num_kv_groups, dim=1)", "repeat(1, self.num_heads // self.num_kv_groups, 1, 1)", "⑤"),
    ],
)
def test_broken_steps_are_caught(steps, capsys, name, old, new, cross):
    """每一步弄坏一处，正是那一步的等式变成 ✗。"""
    source = (FOLDER / "exp_gpt_to_llama.py").read_text(encoding="utf-8")
    assert old in source
    module = type(steps)("broken")
    module.__file__ = steps.__file__
    exec(compile(source.replace(old, new), "broken", "exec"), module.__dict__)
    module.check_steps()
    failed = [line for line in capsys.readouterr().out.splitlines() if "✗" in line]
    assert len(failed) == 1 and f"✗ {cross}" in failed[0], failed


def test_mistakes_run(hub, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(hub, "OUTPUTS", tmp_path)
    command(hub, monkeypatch, "--quick")
    out = capsys.readouterr().out
    assert "✗" not in out and out.count("✓") == 6, out
    assert (tmp_path / "llama_weights.png").is_file()


def test_reader_weights(hub, monkeypatch, capsys, tmp_path):
    """--ids 与 --prompt：写的与 transformers 贪心写的相同；先说要多少内存。"""
    tokenizers = pytest.importorskip("tokenizers")
    expected = theirs(**SHAPES[0])
    expected.save_pretrained(tmp_path)
    written = expected.generate(torch.tensor([[3, 5]]), max_new_tokens=4, do_sample=False, pad_token_id=0)[0].tolist()
    command(hub, monkeypatch, "--weights", tmp_path, "--ids", 3, 5, "--tokens", 4)
    out = capsys.readouterr().out
    assert f"编号　{written}" in out and "GB 内存" in out
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(120)}, unk_token="w0"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    command(hub, monkeypatch, "--weights", tmp_path, "--prompt", "w3 w5", "--tokens", 4)
    out = capsys.readouterr().out
    assert f"编号　{written}" in out and "文字　" + " ".join(f"w{i}" for i in written) in out


def test_memory_is_said_and_refused(hub, monkeypatch, capsys, tmp_path):
    """405B 的配置：张量一个也没有读，就说装不下。"""
    config = {"model_type": "llama", "vocab_size": 128_256, "max_position_embeddings": 8192, "hidden_size": 16_384, "num_attention_heads": 128, "num_key_value_heads": 8, "num_hidden_layers": 126, "intermediate_size": 53_248, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0}
    from safetensors.torch import save_file

    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({"lm_head.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    line = says(hub, monkeypatch, capsys, "--weights", tmp_path, "--ids", 1)
    assert "装不下" in line and "1512." in line and "--dtype bfloat16" in line, line
    line = says(hub, monkeypatch, capsys, "--weights", tmp_path, "--ids", 1, "--dtype", "bfloat16")
    assert "装不下" in line and "756." in line and "换小一点的模型" in line, line


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_type": "qwen3"}, "model_type 是 qwen3"),
        ({"attention_bias": True}, "带偏置"),
        ({"mlp_bias": True}, "带偏置"),
        ({"hidden_act": "gelu"}, "激活函数是 gelu"),
        ({"head_dim": 20}, "每个头的维度是 20"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "RoPE 是 yarn"),
        ({"num_hidden_layers": 3}, "没有 model.layers.2."),
        ({"num_hidden_layers": 1}, "多出 model.layers.1."),
        ({"intermediate_size": 81}, "model.layers.0.mlp.gate_proj.weight 的形状不同"),
        ({"hidden_size": None}, "config.json"),
        ("[1]", "读不了"),
        (None, "读不了"),
    ],
)
def test_other_models_are_refused(hub, monkeypatch, capsys, tmp_path, change, sentence):
    theirs(**SHAPES[0]).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    if isinstance(change, dict):
        raw = json.loads(path.read_text(encoding="utf-8")) | change
        path.write_text(json.dumps({key: value for key, value in raw.items() if value is not None}), encoding="utf-8")
    elif change is None:
        path.unlink()
    else:
        path.write_text(change, encoding="utf-8")
    assert sentence in says(hub, monkeypatch, capsys, "--weights", tmp_path, "--ids", 1)


PREFIXES = {
    "编译过的": lambda name: "_orig_mod." + name,
    "多卡的": lambda name: "module." + name,
    "先套 DDP 再编译": lambda name: "_orig_mod.module." + name,
    "只编译各层": lambda name: re.sub(r"(layers\.\d+\.)", r"\1_orig_mod.", name),
}


@pytest.mark.parametrize("kind", PREFIXES)
def test_prefixes_are_stripped_and_said(hub, tmp_path, capsys, kind):
    """编译过的、多卡训练的，名字里多一截：去掉，说一声；装的与没有多的相同。没有输出层，就共用，也说一声。"""
    from safetensors.torch import load_file, save_file

    expected, file = theirs(**SHAPES[1]), tmp_path / "model.safetensors"
    expected.save_pretrained(tmp_path)
    save_file({PREFIXES[kind](name): tensor for name, tensor in load_file(file).items()}, file)
    ours, ids = hub.load_llama(tmp_path, torch.float32), torch.arange(30)[None]
    out = capsys.readouterr().out
    assert "去掉了" in out and all((word in out) == (word in PREFIXES[kind]("model.layers.0.x")) for word in ("_orig_mod.", "module."))
    assert "没有 lm_head.weight：输出层与词嵌入共用一份权重" in out and ours.out_head.weight is ours.tok_emb.weight
    with torch.no_grad():
        assert (ours(ids) - expected(ids).logits).abs().max() < 1e-4


def test_two_tensors_of_one_name_are_refused(hub, monkeypatch, capsys, tmp_path):
    """去掉前缀以后同名：不知道该用哪一个；没有前缀的，一个字也不说。"""
    from safetensors.torch import load_file, save_file

    theirs(**SHAPES[0]).save_pretrained(tmp_path)
    hub.load_llama(tmp_path, torch.float32)
    assert "去掉了" not in capsys.readouterr().out
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"module.model.norm.weight": tensors["model.norm.weight"].clone()}, file)
    assert "有两个 model.norm.weight" in says(hub, monkeypatch, capsys, "--weights", tmp_path, "--ids", 1)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_broken_files_are_refused(hub, monkeypatch, capsys, tmp_path, value):
    model = theirs(**SHAPES[0])
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[5, 7] = value
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    assert "model.layers.1.mlp.up_proj.weight 里有 nan 或无穷大" in says(hub, monkeypatch, capsys, "--weights", tmp_path, "--ids", 1)
    shard = max(tmp_path.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    assert f"读不了 {shard}" in says(hub, monkeypatch, capsys, "--weights", tmp_path, "--ids", 1)
    shard.unlink()
    assert f"读不了 {shard}" in says(hub, monkeypatch, capsys, "--weights", tmp_path, "--ids", 1)


@pytest.mark.parametrize(("args", "sentence"), [(["--ids", 120], "编号应在 0 到 119 之间"), (["--ids", -1], "编号应在"), (["--ids", 1, "--tokens", 0], "--tokens 至少是 1"), ([], "tokenizer.json")])
def test_bad_arguments(hub, monkeypatch, capsys, tmp_path, args, sentence):
    theirs(**SHAPES[0]).save_pretrained(tmp_path)
    assert sentence in says(hub, monkeypatch, capsys, "--weights", tmp_path, *args)
