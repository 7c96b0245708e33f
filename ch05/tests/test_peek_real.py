"""exp_extend_tokenizer、exp_steering_peek：加词元不动旧的；看到的就是模型自己算的；推一把，只推那一层。

运行：python -m pytest ch05/tests/test_peek_real.py
多数用极小的模型（宽 16，词表仍是 50257）；没有转换好 SmolLM2，就跳过用它的两项。
"""

import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest
import tiktoken
import torch

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "ch05" / "experiments"
TEXTS = ["Hello world", "  two  spaces\n\n x=12345", "don't I'll 中文，标点。🙂 e\u0301", "<|en|>not special<|zh|>", "", "a" * 40]
LLAMA = {"vocab_size": 50_257, "context_length": 64, "emb_dim": 16, "n_heads": 4, "n_layers": 3, "hidden_dim": 24, "n_kv_groups": 2, "rope_base": 10_000, "rope_freq": None, "norm_eps": 1e-5}


def load(name, source=None, folder=None):
    path = FOLDER / f"{name}.py"
    if source is not None:
        path = folder / f"{name}.py"
        path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def extend():
    return load("exp_extend_tokenizer")


@pytest.fixture(scope="module")
def peek():
    return load("exp_steering_peek")


@pytest.fixture(scope="module")
def gpt2():
    os.environ["TIKTOKEN_CACHE_DIR"] = str(ROOT / "setup" / "downloads" / "tiktoken")
    return tiktoken.get_encoding("gpt2")


@pytest.fixture(scope="module")
def holed(gpt2):
    """像 SmolLM2 的分词器：有几个字节排在模型的行数之外。"""
    ranks = dict(gpt2._mergeable_ranks)
    for number, byte in enumerate([b"\xff", b"\xfe", b"\x04", b"\x06", b"\x13"]):
        ranks[byte] = 50_257 + 2 * number
    return tiktoken.Encoding("holed", pat_str=gpt2._pat_str, mergeable_ranks=ranks, special_tokens=gpt2._special_tokens)


def tiny(module, seed=1, tied=True, **changes):
    """随机的小 Llama；权重要大，注意力才不是平均的。"""
    torch.manual_seed(seed)
    model = module.LlamaModel(LLAMA | changes).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    if tied:
        model.out_head.weight = model.tok_emb.weight
    return model.requires_grad_(False)


def command(module, monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, args)])
    module.main()


# ── 加词元 ──


def test_tokenizer(extend, gpt2, holed):
    """旧文字照旧；与书上的写法编号相同；模型之外的字节让出位置，仍能原样解回来。"""
    names = [f"<|new{i}|>" for i in range(7)]
    book = tiktoken.Encoding("book", pat_str=gpt2._pat_str, mergeable_ranks=gpt2._mergeable_ranks, special_tokens=gpt2._special_tokens | {name: gpt2.n_vocab + i for i, name in enumerate(names)})
    for base in (gpt2, holed):
        new = extend.extend_tokenizer(base, names, start=50_257)
        for text in TEXTS:
            assert [i for i in new.encode_ordinary(text) if i < 50_257] == [i for i in base.encode_ordinary(text) if i < 50_257]
            assert new.decode(new.encode_ordinary(text)) == text
        text = "".join(f"x{name} " for name in names)
        assert new.encode(text, allowed_special=set(names)) == book.encode(text, allowed_special=set(names))
        assert [new.decode([50_257 + i]) for i in range(7)] == names
        assert new.decode_bytes(new.encode_ordinary("\x04\x06")) == b"\x04\x06" and "<|new0|>" not in base._special_tokens
    assert extend.extend_tokenizer(gpt2, names).n_vocab == 50_264


@pytest.mark.parametrize("names", [[], [""], ["<|a|>", "<|a|>"], ["<|endoftext|>"], ["<N_1", "<N_10"], ["<N_10", "<N_1"]])
def test_tokenizer_refuses(extend, gpt2, names):
    with pytest.raises(ValueError, match="[\u4e00-\u9fff]"):
        extend.extend_tokenizer(gpt2, names)


@pytest.mark.parametrize("tied", [True, False])
def test_grow_like_transformers(extend, tied):
    """旧的 logits 逐位相同，共用的仍共用；取平均与 transformers 的 resize_token_embeddings 相同。"""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 90, "emb_dim": 24}
    model = tiny(extend, tied=tied, **sizes)
    theirs = LlamaForCausalLM(LlamaConfig(vocab_size=90, hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied, bos_token_id=None, eos_token_id=None))
    with torch.no_grad():
        theirs.get_input_embeddings().weight.copy_(model.tok_emb.weight)
        theirs.get_output_embeddings().weight.copy_(model.out_head.weight)
    theirs.resize_token_embeddings(93)
    ids = torch.arange(80)[None, :40]
    before, count, old = model(ids), sum(p.numel() for p in model.parameters()), model.cfg
    extend.grow(model, 3, "mean")
    assert (model(ids)[..., :90] - before).abs().max() < 1e-5
    assert sum(p.numel() for p in model.parameters()) == count + 3 * 24 * (1 if tied else 2)
    assert (model.out_head.weight is model.tok_emb.weight) == tied and model.cfg["vocab_size"] == 93 and old["vocab_size"] == 90
    assert torch.allclose(model.tok_emb.weight, theirs.get_input_embeddings().weight, atol=1e-3)  # 它在平均上还加了极小的噪声
    assert torch.allclose(model.out_head.weight, theirs.get_output_embeddings().weight, atol=1e-3)
    assert model(torch.tensor([[92]])).shape == (1, 1, 93)
    torch.manual_seed(3)
    extend.grow(model, 2000, "random")
    assert abs(model.tok_emb.weight[93:].std() / model.tok_emb.weight[:93].std() - 1) < 0.03
    for count, init in ((0, "mean"), (2, "average")):
        with pytest.raises(ValueError, match="[\u4e00-\u9fff]"):
            extend.grow(model, count, init)


def test_taken_is_what_the_model_gives(extend):
    """只算最后一次乘法得到的，与真的长出来、整个算一遍相同；取平均不超过上限。"""
    model, ids = tiny(extend, vocab_size=400), torch.arange(5, 45)[None]
    base = (model.tok_emb.weight, model.out_head.weight)
    shares = extend.taken(model, ids, base, {"随机": "random", "平均": "mean", "大": 3.0}, range(7, 9))
    old = torch.softmax(model(ids)[0], dim=-1)
    for name, init in (("随机", "random"), ("平均", "mean"), ("大", 3.0)):
        extend.restart(model, base, 2, init, 7)
        new = torch.softmax(model(ids)[0], dim=-1)
        mass = new[:, 400:].sum(dim=-1)
        assert torch.allclose(shares[name][0], mass, atol=1e-5) and torch.allclose(new[:, :400], old * (1 - mass[:, None]), atol=1e-6)
    assert shares["平均"].max() <= 2 / 402 and shares["大"].max() > 0.5 and shares["随机"].shape == (2, 40)


@pytest.mark.parametrize("tied", [True, False])
def test_learn_only_the_new_rows(extend, tied):
    """旧的行逐位不变，损失降；新的行与"整张表交给 AdamW、旧的梯度填 0、不衰减"学出来的相同。"""
    sentences = [[60, 5, 9, 61, 7], [61, 7, 60, 5]]
    models = [tiny(extend, tied=tied, vocab_size=60) for _ in range(2)]
    old = [model.tok_emb.weight.clone() for model in models][0]
    for model in models:
        torch.manual_seed(5)
        extend.grow(model, 2, "random")
    losses = extend.learn(models[0], sentences, 2, 12, 0.05)
    tables = list({id(w): w for w in (models[1].tok_emb.weight, models[1].out_head.weight)}.values())
    optimizer = torch.optim.AdamW(tables, lr=0.05, weight_decay=0.0)
    for _ in range(12):
        optimizer.zero_grad()
        extend.sentence_loss(models[1], sentences).backward()
        for table in tables:
            table.grad[:60] = 0
        optimizer.step()
    assert torch.equal(models[0].tok_emb.weight[:60], old) and len(tables) == (1 if tied else 2)
    assert torch.allclose(models[0].tok_emb.weight, models[1].tok_emb.weight, atol=1e-4)
    assert torch.allclose(models[0].out_head.weight, models[1].out_head.weight, atol=1e-4)
    assert losses[-1] < losses[0] - 0.5


def test_padding_does_not_count(extend):
    model = tiny(extend, vocab_size=60)
    alone = [extend.sentence_loss(model, [ids]) for ids in ([3, 4, 5, 6, 7], [8, 9])]
    assert torch.allclose(extend.sentence_loss(model, [[3, 4, 5, 6, 7], [8, 9]]), (4 * alone[0] + alone[1]) / 5, atol=1e-5)


def test_mini_from_the_start(extend, gpt2, tmp_path, monkeypatch, capsys):
    """从一个 gpt_mini.pth 走到底：两张表的模型，没有 ✗，画出图；没有 SmolLM2 就说运行什么。"""
    cfg = {"vocab_size": 50_257, "context_length": 64, "emb_dim": 16, "n_heads": 2, "n_layers": 1, "drop_rate": 0.1, "qkv_bias": False}
    torch.save({"config": cfg, "model": extend.GPTModel(cfg).state_dict()}, tmp_path / "gpt_mini.pth")
    monkeypatch.setenv("LLM_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(extend, "OUTPUTS", tmp_path)
    monkeypatch.setattr(extend, "SMOLLM2", tmp_path / "none.pth")
    command(extend, monkeypatch, "--quick")
    text = capsys.readouterr().out
    assert "两张表" in text and "✗" not in text and text.count("✓") == 7 and (tmp_path / "extend_tokenizer.png").stat().st_size > 20_000
    with pytest.raises(SystemExit) as stopped:
        command(extend, monkeypatch, "--model", "smollm2")
    assert stopped.value.code == 2 and "requirements-model.txt" in capsys.readouterr().err


def run_extend(module, holed, monkeypatch, capsys):
    model = tiny(module)
    monkeypatch.setattr(module, "load_start", lambda kind: (model, holed, "小模型"))
    monkeypatch.setattr(module, "draw", lambda *arguments: None)
    command(module, monkeypatch, "--quick")
    return capsys.readouterr().out


def test_extend_is_right(extend, holed, monkeypatch, capsys):
    text = run_extend(extend, holed, monkeypatch, capsys)
    assert text.count("✓") == 7 and "✗" not in text and "共用一张表" in text and "④" in text


@pytest.mark.parametrize(
    "old, new, line",
    [
        ("if tied and layer is model.out_head:", "if False:", "参数"),
        ("i + len(names) if i >= start else i for", "i for", "编号"),
        ("i + len(names) if i >= start else i for", "i + len(names) for", "编号"),
        ("torch.cat([layer.weight, new_rows(", "torch.cat([layer.weight * 1.01, new_rows(", "旧的 logits"),
        ("return weight.mean(dim=0)", "return weight[0]", "取平均"),
        ("table[-count:] = row", "table[-count - 1 : -1] = row", "逐位不变"),
        ("row.grad = table.grad[-count:].clone()", "row.grad = -table.grad[-count:].clone()", "损失都降"),
    ],
)
def test_extend_mutants(extend, holed, tmp_path, monkeypatch, capsys, old, new, line):
    """写错一处，自查里就有 ✗。"""
    _, _, source = (FOLDER / "exp_extend_tokenizer.py").read_text(encoding="utf-8").split('"""', 2)
    assert source.count(old) == 1
    module = load("exp_extend_tokenizer", source.replace(old, new), tmp_path)
    monkeypatch.setattr(module, "find_data", extend.find_data)
    text = run_extend(module, holed, monkeypatch, capsys)
    assert re.search(f"✗.*{line}", text), text


# ── 看一眼，推一把 ──


def test_peek_like_transformers(peek):
    """注意力、残差主路、最后的输出，与 transformers 的 Llama 报告的相同。"""
    from transformers import LlamaConfig, LlamaForCausalLM

    llama = load("exp_gpt_to_llama")
    torch.manual_seed(2)
    theirs = LlamaForCausalLM(LlamaConfig(vocab_size=70, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5, attn_implementation="eager", initializer_range=0.4, tie_word_embeddings=False)).eval()
    cfg = LLAMA | {"vocab_size": 70}
    ours, model = llama.LlamaModel(cfg), peek.LlamaModel(cfg).eval()
    llama.load_weights_into_llama(ours, cfg, theirs.state_dict())
    model.load_state_dict(ours.state_dict())
    ids = torch.randint(70, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(ids, output_attentions=True, output_hidden_states=True)
    weights, gap = peek.attention(model, ids)
    assert torch.allclose(weights, torch.stack(expected.attentions), atol=1e-5) and gap < 1e-5
    stream = peek.residuals(model, ids[:1])
    assert torch.allclose(stream[:3], torch.stack([x[0] for x in expected.hidden_states[:3]]), atol=1e-4)  # 它的最后一项已经归一化过
    assert torch.allclose(peek.lens(model, stream)[-1], torch.softmax(expected.logits[0], dim=-1), atol=1e-5)
    assert weights.triu(1).abs().max() == 0 and not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_head_scores(peek):
    """造三个头，各只看一处：分数是 1，别的两项几乎是 0。"""
    weights = torch.zeros(1, 1, 3, 12, 12)
    for i in range(12):
        weights[0, 0, 0, i, max(i - 1, 0)] = weights[0, 0, 1, i, 0] = weights[0, 0, 2, i, i - 5 if i >= 6 else i] = 1
    scores = torch.stack(list(peek.head_scores(weights).values()))[:, 0, 0]
    assert torch.equal(scores.diag(), torch.ones(3)) and (scores - scores.diag().diag()).max() < 0.1


def test_steered(peek):
    """只从那一层起加，与手工接着算的相同；每句可以加的不同；0 逐位不变；出了 with、中途报错，都恢复。"""
    model, ids = tiny(peek, vocab_size=60), torch.arange(9)[None]
    vectors = torch.randn(2, 1, 16)
    plain, stream = model(ids), peek.residuals(model, ids)
    with peek.steered(model, 2, vectors):
        pushed = model(ids.expand(2, -1))
    for vector, logits in zip(vectors, pushed):
        x = model.trf_blocks[2](stream[2][None] + vector, torch.ones(9, 9, dtype=torch.bool).triu(1), model.cos, model.sin)
        assert torch.allclose(model.out_head(model.final_norm(x))[0], logits, atol=1e-4)
    assert (pushed - plain).abs().max() > 0.1
    with peek.steered(model, 3, 0 * vectors[0, 0]):
        assert torch.equal(model(ids), plain)
    with pytest.raises(KeyError), peek.steered(model, 1, vectors[0, 0]):
        raise KeyError
    assert torch.equal(model(ids), plain)
    for layer in (0, 4):
        with pytest.raises(ValueError, match="3 个块"), peek.steered(model, layer, vectors[0, 0]):
            pass


def test_directions(peek):
    """第一个是两组平均之差；对照一样长，换种子就换；打乱标签的，好坏两边正好抵消。"""
    torch.manual_seed(1)
    taste = torch.zeros(16)
    taste[0] = 5.0
    noise = torch.randn(2, 6, 16) * (torch.arange(16) > 0)
    found = peek.directions(noise[0] + taste, noise[1] - taste, 4, 1)
    assert torch.allclose(found[0], noise[0].mean(dim=0) - noise[1].mean(dim=0) + 2 * taste, atol=1e-5)
    assert torch.allclose(found.norm(dim=1), found[0].norm().expand(9)) and found[5:, 0].abs().max() < 1e-4
    assert not torch.allclose(found[1:], peek.directions(noise[0] + taste, noise[1] - taste, 4, 2)[1:], atol=0.1)


def test_sink_is_left_out(peek, gpt2):
    """平均的时候不算第 0 个位置。"""
    model = tiny(peek)
    stream = peek.residuals(model, torch.tensor([gpt2.encode_ordinary("I loved this movie")]))
    assert torch.allclose(peek.mean_residual(model, gpt2, ["I loved this movie"], 2)[0], stream[2, 1:].mean(dim=0), atol=1e-5)


def run_peek(module, gpt2, monkeypatch, capsys, *args, drawn=False):
    model = tiny(module)
    monkeypatch.setattr(module, "load_smollm2", lambda: (model, gpt2))
    if not drawn:
        monkeypatch.setattr(module, "draw_peek", lambda *arguments: None)
        monkeypatch.setattr(module, "draw_push", lambda *arguments: None)
    command(module, monkeypatch, "--quick", "--layer", "2", *args)
    return capsys.readouterr().out


def test_peek_is_right(peek, gpt2, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(peek, "OUTPUTS", tmp_path)
    text = run_peek(peek, gpt2, monkeypatch, capsys, "--text", "One $ is 中 two\n three", drawn=True)
    assert text.count("✓") == 5 and "✗" not in text
    assert all((tmp_path / name).stat().st_size > 20_000 for name in ("peek.png", "steering.png"))


@pytest.mark.parametrize(
    "old, new, line",
    [
        ("model.final_norm(x[None])", "x[None]", "真正的输出"),
        ("keys = keys.repeat_interleave(att.num_heads // att.num_kv_groups, dim=1)  # (b, h, t, k)\n        values = values.repeat_interleave(", "keys = keys.repeat(1, att.num_heads // att.num_kv_groups, 1, 1)\n        values = values.repeat_interleave(", "上下文向量"),
        ("queries, keys = apply_rope(queries, model.cos, model.sin), apply_rope(keys, model.cos, model.sin)", "pass", "上下文向量"),
        (".masked_fill(future, -torch.inf)", "", "看不到未来"),
        (" / att.head_dim**0.5).masked", ").masked", "上下文向量"),
        ("output + vector)", "output * 0 + vector)", "强度 0"),
        ("output + vector)", "output + vector + 1e-3)", "强度 0"),
    ],
)
def test_peek_mutants(gpt2, tmp_path, monkeypatch, capsys, old, new, line):
    """写错一处，自查里就有 ✗。"""
    _, _, source = (FOLDER / "exp_steering_peek.py").read_text(encoding="utf-8").split('"""', 2)
    assert source.count(old) == 1
    module = load("exp_steering_peek", source.replace(old, new), tmp_path)
    text = run_peek(module, gpt2, monkeypatch, capsys)
    assert re.search(f"✗.*{line}", text), text


@pytest.mark.parametrize("args", [["--text", "a"], ["--text", "word " * 30], ["--layer", "0"], ["--layer", "9"], ["--strength", "0"], ["--strength", "nan"]])
def test_bad_arguments(peek, gpt2, monkeypatch, capsys, args):
    with pytest.raises(SystemExit) as stopped:
        run_peek(peek, gpt2, monkeypatch, capsys, *args)
    assert stopped.value.code == 2 and re.search("[\u4e00-\u9fff]", capsys.readouterr().err.splitlines()[-1])


def test_without_the_model(peek, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(peek, "SMOLLM2", tmp_path / "none.pth")
    with pytest.raises(SystemExit) as stopped:
        command(peek, monkeypatch)
    assert stopped.value.code == 2 and "requirements-model.txt" in capsys.readouterr().err


# ── 真的模型 ──


def real(module):
    if not module.SMOLLM2.is_file():
        pytest.skip("没有 SmolLM2：python ch05/experiments/exp_real_llm.py --convert")
    model, tokenizer = module.load_smollm2()
    return model.requires_grad_(False), tokenizer


def test_real_model_grows(extend):
    """SmolLM2：旧的 logits 不变，仍共用；取平均，占不到上限。"""
    model, plain = real(extend)
    tokenizer = extend.extend_tokenizer(plain, extend.NAMES, start=49_152)
    ids = torch.tensor([plain.encode_ordinary("The capital of France")])
    before = model(ids)
    extend.grow(model, 2)
    after = model(ids)
    assert (after[..., :49_152] - before).abs().max() <= 1e-5 and model.out_head.weight is model.tok_emb.weight
    assert torch.softmax(after, dim=-1)[..., 49_152:].max() <= 1 / 49_154
    assert tokenizer.encode("<|zh|>a", allowed_special="all")[0] == 49_153 < plain.n_vocab


def test_real_model_peeked(peek):
    """SmolLM2：最后一层就是输出（巴黎）；有归纳头；推向好评，好词就多。"""
    model, tokenizer = real(peek)
    ids = torch.tensor([tokenizer.encode_ordinary("The capital of France is")])
    probs = peek.lens(model, peek.residuals(model, ids))
    assert torch.equal(probs[-1], torch.softmax(model(ids)[0], dim=-1)) and tokenizer.decode([probs[-1, -1].argmax().item()]) == " Paris"
    twice = torch.randint(1000, 40_000, (1, 12), generator=torch.Generator().manual_seed(1)).repeat(1, 2)
    weights, gap = peek.attention(model, twice)
    assert gap < 1e-3 and peek.head_scores(weights)["看上次的后一个"].max() > 0.5
    good, bad = (peek.mean_residual(model, tokenizer, prompts[:2], 15) for prompts in (peek.POSITIVE, peek.NEGATIVE))
    vector = good.mean(dim=0) - bad.mean(dim=0)
    odds, _ = peek.push(model, tokenizer, 15, torch.stack([-2 * vector, 0 * vector, 2 * vector]))
    assert odds[0] < odds[1] < odds[2]
