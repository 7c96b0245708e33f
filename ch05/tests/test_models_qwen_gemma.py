"""exp_qwen3、exp_qwen3_weights、exp_gemma3：与 transformers 的 Qwen3、Qwen3-MoE、Gemma 3 相同；装不进的、装不下的，都用一句话拒绝。

运行：python -m pytest ch05/tests/test_models_qwen_gemma.py
不联网：模型都是当场造的极小的一个，由 transformers 存成文件，再由我们读。
"""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[1] / "experiments"
COMMON = {"vocab_size": 120, "hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 20, "intermediate_size": 80, "max_position_embeddings": 128, "initializer_range": 0.2}
COMMON |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
MOE = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
KINDS = {
    "Qwen3，共用输出层": ("Qwen3", {"num_hidden_layers": 3, "tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "Qwen3，eps 大": ("Qwen3", {"num_hidden_layers": 3, "tie_word_embeddings": False, "rms_norm_eps": 1e-2}),
    "Qwen3-MoE，概率只在选中的之间分": ("Qwen3Moe", {"num_hidden_layers": 3, "norm_topk_prob": True} | MOE),
    "Qwen3-MoE，概率在全部专家之间分": ("Qwen3Moe", {"num_hidden_layers": 3, "norm_topk_prob": False} | MOE),
    # 7 层：第 6 层全看，窗口 8 比序列短得多；query_pre_attn_scalar 与 head_dim 不同，才看得出除的是哪一个。
    "Gemma 3": ("Gemma3", {"num_hidden_layers": 7, "sliding_window": 8, "query_pre_attn_scalar": 11, "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6}, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}),
}


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def lesson():
    """讲 QK-norm 的那一个。"""
    return load("exp_qwen3")


@pytest.fixture(scope="module")
def qwen():
    """装权重的那一个；模型是从 exp_qwen3 抄来的，一个字不差。"""
    return load("exp_qwen3_weights")


@pytest.fixture(scope="module")
def gemma():
    return load("exp_gemma3")


def theirs(kind, **changes):
    """transformers 的一个小模型；归一化的缩放各不相同，装反了才看得出来。"""
    import transformers

    torch.manual_seed(1)
    config = getattr(transformers, {"Gemma3": "Gemma3TextConfig"}.get(kind, kind + "Config"))(**COMMON | KINDS[next(name for name in KINDS if KINDS[name][0] == kind)][1] | changes)
    model = getattr(transformers, kind + "ForCausalLM")(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, *((-0.5, 0.5) if kind == "Gemma3" else (0.5, 1.5)))
        elif "experts" in name or "gate.weight" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def greedy(model, ids, count):
    """transformers 贪心地续写；attention_mask 全是 1：不给，它会把编号等于填充词元的都遮住。"""
    return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0)


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


@pytest.mark.parametrize("shard", ["60KB", "1GB"], ids=["分成几份", "一个文件"])
@pytest.mark.parametrize("name", KINDS)
def test_equal_to_transformers(qwen, gemma, tmp_path, name, shard):
    kind, changes = KINDS[name]
    expected = theirs(kind, **changes)
    expected.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").is_file() == (shard == "60KB")
    module = gemma if kind == "Gemma3" else qwen
    ours = (module.load_gemma if kind == "Gemma3" else module.load_qwen)(tmp_path, torch.float32)
    ids = torch.randint(120, (2, 70), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        logits = expected(ids).logits
        assert logits.std() > 0.5 and (ours(ids) - logits).abs().max() < 1e-4
    assert torch.equal(module.generate(ours, ids[:1, :30], 30, 128), greedy(expected, ids[:1, :30], 30))
    assert not any(p.is_meta for p in [*ours.parameters(), *ours.buffers()])
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in expected.parameters())


def test_half_precision_equals_transformers(gemma, qwen):
    """bfloat16：两种归一化、√d 的舍入都与 transformers 逐位相同。"""
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm, Gemma3TextScaledWordEmbedding
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

    x = (100 * torch.randn(9, 48)).bfloat16()
    for ours, other in [(gemma.RMSNorm(48), Gemma3RMSNorm(48)), (qwen.RMSNorm(48, 1e-6), Qwen3RMSNorm(48))]:
        torch.nn.init.uniform_(ours.scale)
        with torch.no_grad():
            other.weight.copy_(ours.scale)
        assert torch.equal(ours.bfloat16()(x), other.bfloat16()(x))
    cfg = gemma.TINY | {"context_length": 256, "emb_dim": 160, "n_layers": 0, "layer_types": []}
    model, seen = gemma.Gemma3Model(cfg).bfloat16(), []
    model.final_norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    table = Gemma3TextScaledWordEmbedding(256, 160, 0, embed_scale=160**0.5).bfloat16()
    table.load_state_dict({"weight": model.tok_emb.weight})
    model(torch.arange(256)[None])
    assert torch.equal(seen[0][0], table(torch.arange(256)))


def test_old_configs(lesson, qwen, gemma, tmp_path):
    """hub 上的 config.json 是 transformers 5 以前的写法：没有 rope_parameters，1B 也没有 layer_types。"""
    old = {"model_type": "gemma3_text", "sliding_window_pattern": 6, "rope_theta": 1000000, "rope_local_base_freq": 10000, "rope_scaling": None, "sliding_window": 512, "query_pre_attn_scalar": 256, "hidden_activation": "gelu_pytorch_tanh"}
    old |= {"vocab_size": 262_144, "max_position_embeddings": 32_768, "hidden_size": 1152, "num_attention_heads": 4, "num_hidden_layers": 26, "intermediate_size": 6912, "head_dim": 256, "num_key_value_heads": 1, "rms_norm_eps": 1e-6}
    (tmp_path / "config.json").write_text(json.dumps(old), encoding="utf-8")
    assert gemma.gemma_config(tmp_path) == gemma.GEMMA3_CONFIG_1B
    old = {"model_type": "qwen3", "rope_theta": 1000000, "rope_scaling": None, "use_sliding_window": False, "attention_bias": False, "tie_word_embeddings": True}
    old |= {"vocab_size": 151_936, "max_position_embeddings": 40_960, "hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 28, "intermediate_size": 3072, "head_dim": 128, "num_key_value_heads": 8, "rms_norm_eps": 1e-6}
    (tmp_path / "config.json").write_text(json.dumps(old), encoding="utf-8")
    assert qwen.qwen_config(tmp_path) == lesson.QWEN_CONFIG_06_B


def test_tied_file_with_a_head(qwen, tmp_path, capsys):
    """Qwen3-0.6B 的文件里，共用的输出层又存了一份：装得进，仍然只占一份。"""
    from safetensors.torch import load_file, save_file

    expected = theirs("Qwen3")
    expected.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file)
    ours = qwen.load_qwen(tmp_path, torch.float32)
    assert ours.out_head.weight is ours.tok_emb.weight
    assert "又存了一份 lm_head.weight" in capsys.readouterr().out


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
@pytest.mark.parametrize("kind", ["Qwen3", "Gemma3"])
def test_prefixes_are_stripped_and_said(qwen, gemma, tmp_path, capsys, kind, prefix):
    """编译过的、多卡训练的，名字里多一截：去掉，说一声。没有输出层，就共用，也说一声。"""
    from safetensors.torch import load_file, save_file

    expected, file = theirs(kind), tmp_path / "model.safetensors"
    expected.save_pretrained(tmp_path)
    save_file({prefix + name: tensor for name, tensor in load_file(file).items()}, file)
    ours, ids = (qwen.load_qwen if kind == "Qwen3" else gemma.load_gemma)(tmp_path, torch.float32), torch.arange(30)[None]
    out = capsys.readouterr().out
    assert "去掉了" in out and all((word in out) == (word in prefix) for word in ("_orig_mod.", "module."))
    assert "输出层与词嵌入共用一份权重：文件里没有 lm_head.weight" in out and ours.out_head.weight is ours.tok_emb.weight
    with torch.no_grad():
        assert (ours(ids) - expected(ids).logits).abs().max() < 1e-4


def test_equal_to_the_book(lesson):
    """同样的权重，与原书仓库的 Qwen3Model 相同（密集的）。"""
    from llms_from_scratch.qwen3 import Qwen3Model

    cfg = lesson.QUICK_CONFIG | {"vocab_size": 60, "qk_norm": True}
    ours, book = lesson.Qwen3Model(cfg), Qwen3Model(cfg | {"dtype": torch.float32})
    book.load_state_dict(ours.state_dict())
    ids = torch.randint(60, (2, 20), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), book(ids), atol=1e-5, rtol=1e-5)


def test_norm_comes_before_rope(lesson):
    """q_norm 在旋转之前：scale 各不相同时，次序一反，同样的两个词元换个地方，分数就变了样。"""
    att = lesson.GroupedQueryAttention(16, 2, 1, 8, qk_norm=True)
    torch.nn.init.uniform_(att.q_norm.scale, 0.1, 2.0)
    cos, sin = lesson.compute_rope_params(8, 100.0, 12)
    queries, _ = att.queries_and_keys(torch.randn(1, 1, 16).expand(1, 12, 16), cos, sin)  # (1, 2, 12, 8)
    assert torch.allclose(queries.norm(dim=-1), queries.norm(dim=-1)[..., :1].expand(1, 2, 12), atol=1e-5)


def test_scripts_run(lesson, qwen, gemma, monkeypatch, capsys, tmp_path):
    for module in (lesson, qwen, gemma):
        monkeypatch.setattr(module, "OUTPUTS", tmp_path)
        command(module, monkeypatch, "--quick")
    out = capsys.readouterr().out
    assert "✗" not in out and out.count("✓") == 14 and "不下结论" in out, out
    for number in ["596,049,920", "30,532,122,624", "268,098,176", "999,885,952", "832.0 MiB", "139.0 MiB", "只算 3.35B"]:
        assert number in out
    assert all((tmp_path / f"{name}.png").is_file() for name in ("qwen3", "qwen3_weights", "gemma3"))


def test_experts_of_all_layers_are_counted(lesson, qwen):
    """用到多少参数：在一个小的 MoE 上，一个一个地数没有选中的专家。"""
    cfg = lesson.QUICK_CONFIG | {"vocab_size": 30, "qk_norm": True, "tied": False, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 10}
    model, ids = lesson.Qwen3Model(cfg).eval(), torch.tensor([[3]])
    model(ids)
    idle = sum(p.numel() for block in model.trf_blocks for e in set(range(6)) - set(block.ff.last_choice[0].tolist()) for fc in (block.ff.fc1, block.ff.fc2, block.ff.fc3) for p in fc[e].parameters())
    assert idle > 0 and lesson.count_parameters(model)["active"] == sum(p.numel() for p in model.parameters()) - idle
    used = qwen.experts_used(repeats=3)
    assert used[0] == 8 and used[-1] > 127 and used == sorted(used)


@pytest.mark.parametrize(("name", "kind", "template"), [("qwen3", "Qwen3", "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"), ("gemma3", "Gemma3", "<bos><start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n")])
def test_reader_weights(qwen, gemma, monkeypatch, capsys, tmp_path, name, kind, template):
    """--weights、--ask：照模板分词，写的与 transformers 贪心写的相同，遇到结束就停；先说要多少内存。"""
    tokenizers = pytest.importorskip("tokenizers")
    module, expected = (qwen, theirs(kind)) if name == "qwen3" else (gemma, theirs(kind))
    expected.save_pretrained(tmp_path)
    special = ["<|im_start|>", "<|im_end|>", "<think>", "</think>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(100)} | {word: 100 + i for i, word in enumerate(special)}, unk_token="w0"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.add_special_tokens(special)
    words.save(str(tmp_path / "tokenizer.json"))
    ids = torch.tensor([words.encode(template.format("w3 w5")).ids])
    written = greedy(expected, ids, 6)[0, ids.shape[1] :].tolist()
    stop = 101 if name == "qwen3" else 106
    written = written[: written.index(stop)] if stop in written else written
    command(module, monkeypatch, "--weights", tmp_path, "--ask", "w3 w5", "--tokens", 6)
    out = capsys.readouterr().out
    assert f"答　{words.decode(written)}\n" in out and "GB 内存" in out, (out, written)
    (tmp_path / "tokenizer.json").unlink()
    assert "没有" in says(module, monkeypatch, capsys, "--weights", tmp_path)


def test_memory_is_said_and_refused(qwen, gemma, monkeypatch, capsys, tmp_path):
    """权重一个数也没有读，就说装不下。"""
    for module, kind, read in ((qwen, "Qwen3", qwen.load_qwen), (gemma, "Gemma3", gemma.load_gemma)):
        theirs(kind).save_pretrained(tmp_path / kind)
        monkeypatch.setattr(module, "total_memory", lambda: 0.5)
        monkeypatch.setattr(module, "assign_all", None)
        for dtype, sentence in ((torch.float32, "--dtype bfloat16"), (torch.bfloat16, "请换小一点的模型")):
            with pytest.raises(ValueError, match=f"装不下：约要 1.0 GB 内存，这台机器只有 0.5 GB；.*{sentence}"):
                read(tmp_path / kind, dtype)
            assert "个参数" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "change", "sentence"),
    [
        ("Qwen3", {"model_type": "llama"}, "model_type 是 llama"),
        ("Qwen3", {"attention_bias": True}, "带偏置"),
        ("Qwen3", {"use_sliding_window": True}, "有滑动窗口"),
        ("Qwen3", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}}, "RoPE 是 yarn"),
        ("Qwen3", {"head_dim": 22}, "self_attn.q_proj.weight 的形状不同"),
        ("Qwen3", {"num_hidden_layers": 4}, "没有 model.layers.3."),
        ("Qwen3", {"num_hidden_layers": 2}, "多出 model.layers.2."),
        ("Qwen3", {"tie_word_embeddings": False}, "没有 lm_head.weight"),
        ("Qwen3", {"hidden_size": None}, "缺 hidden_size"),
        ("Qwen3Moe", {"mlp_only_layers": [0]}, "有的层不用专家"),
        ("Qwen3Moe", {"decoder_sparse_step": 2}, "有的层不用专家"),
        ("Qwen3Moe", {"num_local_experts": 7}, "没有 model.layers.0.mlp.experts.6."),
        ("Gemma3", {"model_type": "gemma3"}, "带图像的"),
        ("Gemma3", {"final_logit_softcapping": 30.0}, "有 softcapping"),
        ("Gemma3", {"attn_logit_softcapping": 50.0}, "有 softcapping"),
        ("Gemma3", {"attention_bias": True}, "带偏置"),
        ("Gemma3", {"use_bidirectional_attention": True}, "注意力是双向的"),
        ("Gemma3", {"tie_word_embeddings": False}, "输出层不与词嵌入共用"),
        ("Gemma3", {"hidden_activation": "silu"}, "激活函数是 silu"),
        ("Gemma3", {"rope_parameters": {"full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}, "RoPE 拉长了上下文"),
        ("Gemma3", {"layer_types": ["full_attention"]}, "layer_types 有 1 项"),
        ("Gemma3", {"sliding_window": None}, "缺 sliding_window"),
    ],
)
def test_other_models_are_refused(qwen, gemma, monkeypatch, capsys, tmp_path, kind, change, sentence):
    pytest.importorskip("tokenizers")
    theirs(kind).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,"pre_tokenizer":null,"post_processor":null,"decoder":null,"model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"a"}}', encoding="utf-8")
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text(encoding="utf-8")) | change
    path.write_text(json.dumps({key: value for key, value in raw.items() if value is not None}), encoding="utf-8")
    assert sentence in says(gemma if kind == "Gemma3" else qwen, monkeypatch, capsys, "--weights", tmp_path)


@pytest.mark.parametrize(
    ("script", "old", "new", "failed"),
    [
        ("exp_gemma3", "everything.tril(-window)", "everything.tril(-window - 1)", "窗口的掩码与定义相同"),
        ("exp_gemma3", "(normed * (1.0 + self.scale.float()))", "(normed * self.scale.float())", "没训练过的归一化"),
        ("exp_gemma3", '"sliding_window": 16,', '"sliding_window": 64,', "每一种写错法"),
        ("exp_qwen3_weights", "0.5 + torch.rand(tensor.shape)", "torch.ones(tensor.shape)", "其余的每一种"),
        ("exp_qwen3_weights", '"num_experts_per_tok": 3,', '"num_experts_per_tok": 6,', "其余的每一种"),
        ("exp_qwen3_weights", 'tensor.flip(0) if "mlp.gate." in name else tensor', "tensor", "专家没有次序"),
    ],
)
def test_broken_scripts_are_caught(monkeypatch, capsys, tmp_path, script, old, new, failed):
    """照「动手改」弄坏一处，说好的那一条变成 ✗。"""
    source = (FOLDER / f"{script}.py").read_text(encoding="utf-8")
    assert source.count(old) == 1
    module = type(sys)("broken")
    module.__file__ = str(tmp_path / "broken.py")
    (tmp_path / "broken.py").write_text(source, encoding="utf-8")
    exec(compile(source.replace(old, new), "broken", "exec"), module.__dict__)
    module.OUTPUTS = tmp_path
    module.find_data = lambda *names: FOLDER.parents[1] / "setup" / "data" / "story-en.txt"
    command(module, monkeypatch, "--quick")
    assert any("✗" in line and failed in line for line in capsys.readouterr().out.splitlines())
