"""exp_padding_position：掩码、位置、读哪里，都与不填充的、别人写的相同；弄坏了测试就变红；坏参数。

运行：python -m pytest ch06/tests/test_padding_position.py
用随机的小模型，不需要 SmolLM2。
"""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "exp_padding_position.py"
LLAMA = {"vocab_size": 97, "context_length": 32, "emb_dim": 16, "n_heads": 4, "n_layers": 3, "hidden_dim": 24, "n_kv_groups": 2, "rope_base": 10_000, "rope_freq": None, "norm_eps": 1e-5}
GPT = {"vocab_size": 97, "context_length": 32, "emb_dim": 16, "n_heads": 4, "n_layers": 3, "drop_rate": 0.0, "qkv_bias": False}
PAD = 96


def load(path=SCRIPT, name="exp_padding_position"):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # inspect.getsource 要找得到它
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ns():
    yield load()
    del sys.modules["exp_padding_position"]


def tiny(ns, kind="GPTModel", seed=0):
    torch.manual_seed(seed)
    model = getattr(ns, kind)(LLAMA if kind == "LlamaModel" else GPT).eval()
    if kind == "LlamaModel":
        for parameter in model.parameters():
            parameter.data *= 2  # 注意力尖一些，看错了地方才看得出来
    return model


def some(seed=1, lengths=(5, 9, 1, 16, 7)):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, PAD, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def unpadded(ns, model, message):
    """一条一条地算：只有因果掩码，位置从 0 数起。"""
    t = len(message)
    return model(torch.tensor([message]), torch.ones(t, t, dtype=torch.bool).triu(1)[None, None], torch.arange(t)[None])[0]


# ---- 每条检查返回成立吗；弄坏代码之后，它必须不成立 ----


def layout_right(ns):
    right, left = (ns.lay_out([[1, 2, 3], [4]], side, 9, 4) for side in ("右", "左"))
    return (
        right[0].tolist() == [[1, 2, 3, 9], [4, 9, 9, 9]]
        and left[0].tolist() == [[9, 1, 2, 3], [9, 9, 9, 4]]
        and right[1].tolist() == [[True] * 3 + [False], [True] + [False] * 3]
        and left[1].tolist() == [[False] + [True] * 3, [False] * 3 + [True]]
        and ns.lay_out([[1, 9]], "右", 9, 3)[1].tolist() == [[True, True, False]]  # 正文里真有填充词元，也算真的
    )


def mask_right(ns):
    """逐格照定义：看得见 = 不在未来，且（是真词元，或是自己）。"""
    real = torch.tensor([[False, True, True, False], [True, True, True, True], [False, False, False, True]])
    for masked in (False, True):
        mask = ns.attention_mask(real, masked)
        for i in range(3):
            for q in range(4):
                for k in range(4):
                    if mask[i, 0, q, k].item() == (k <= q and (not masked or bool(real[i, k]) or k == q)):
                        return False
    return mask.shape == (3, 1, 4, 4)


def positions_right(ns):
    real = torch.tensor([[False, False, True, True], [True, True, False, False], [True] * 4])
    return ns.positions_of(real, True)[0, 2:].tolist() == [0, 1] and ns.positions_of(real, True)[2].tolist() == [0, 1, 2, 3] and ns.positions_of(real, True).min() == 0 and ns.positions_of(real, False).tolist() == [[0, 1, 2, 3]] * 3


def right_padding_is_harmless(ns):
    """右填充：读最后一个真词元、取平均，都与不填充的相同；换掉填充词元，一位也不变；读末尾的就不同。"""
    for kind in ("GPTModel", "LlamaModel"):
        model, messages = tiny(ns, kind), some()
        ns.LENGTH = 20
        found = ns.vectors(model, messages, PAD, ("右", False, False, "真词元 平均 末尾"))
        other = ns.vectors(model, messages, 3, ("右", False, False, "真词元 平均 末尾"))
        alone = [unpadded(ns, model, message) for message in messages]
        for row, each in enumerate(alone):
            if not (torch.allclose(found[row, 0], each[-1], atol=1e-4) and torch.allclose(found[row, 1], each.mean(dim=0), atol=1e-4)):
                return False
        if not torch.equal(found[:, :2], other[:, :2]) or torch.allclose(found[:, 2], other[:, 2], atol=1e-3):
            return False
    return True


def left_padding_needs_the_mask(ns):
    """左填充：不加掩码就不同；加了，RoPE 的与不填充的相同；GPT 还要位置。"""
    ns.LENGTH = 20
    for kind in ("GPTModel", "LlamaModel"):
        model, messages = tiny(ns, kind), some()
        alone = torch.stack([unpadded(ns, model, message)[-1] for message in messages])
        same = [torch.allclose(ns.vectors(model, messages, PAD, ("左", masked, shifted, "末尾"))[:, 0], alone, atol=1e-4) for masked, shifted in ((False, False), (False, True), (True, False), (True, True))]
        if same != [False, False, kind == "LlamaModel", True]:
            return False
    return True


def masked_pads_are_invisible(ns):
    """加了掩码，换掉填充词元，真词元的输出一位也不变；右填充的末尾自己是填充词元，会变。"""
    ns.LENGTH, messages = 20, some()
    for kind in ("GPTModel", "LlamaModel"):
        model = tiny(ns, kind)
        pairs = [[ns.vectors(model, messages, pad, (side, True, False, "末尾")) for pad in (PAD, 3)] for side in ("左", "右")]
        if not torch.equal(*pairs[0]) or torch.equal(*pairs[1]) or any(torch.isnan(each).any() for pair in pairs for each in pair):
            return False
    return True


def untuned_right(ns):
    """输出层与 nn.Linear 的相同；全答一类是 1，各条相同标准差是 0。"""
    found, positives = torch.randn(40, 6, generator=torch.Generator().manual_seed(2)), []
    for seed in range(6):
        torch.manual_seed(seed)
        layer = torch.nn.Linear(6, 2)
        gap = [(layer(x)[1] - layer(x)[0]).item() for x in found]
        positives.append(sum(value > 0 for value in gap) / 40)
        mean = sum(gap) / 40
        share, spread = ns.untuned(found, seed)
        if abs(share - max(positives[-1], 1 - positives[-1])) > 1e-6 or abs(spread - (sum((value - mean) ** 2 for value in gap) / 39) ** 0.5) > 1e-4:
            return False
    assert min(positives) < 0.5 < max(positives), "两边都要有，这条检查才有意义"
    return ns.untuned(found[:1].expand(9, 6), 5)[0] == 1 and ns.untuned(found[:1].expand(9, 6), 5)[1] < 1e-6


def probe_right(ns):
    """与解方程、一条一条算的岭回归相同；考的时候用训练时的均值。"""
    generator = torch.Generator().manual_seed(3)
    answers = (torch.rand(80, generator=generator) < 0.5).long()
    found = {"甲": torch.randn(80, 5, generator=generator) + 1.2 * answers[:, None], "乙": torch.randn(80, 5, generator=generator) + answers[:, None] + 0.5}
    mine = ns.probe(found, answers, (50, 30), 4)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(4))
    train, test = order[:50], order[50:]
    for name, x in found.items():
        center, spread = x[train].mean(dim=0), x[train].std(dim=0)
        scale = ((x[train] - center) / spread).square().sum(dim=1).mean().double()
        kernel = lambda a, b, center=center, spread=spread, scale=scale: ((a - center) / spread).double() @ ((b - center) / spread).double().T / scale + 1  # noqa: E731
        _, penalty, _ = ns.learn(kernel(x[train], x[train]), answers[train].double() * 2 - 1)
        alpha = torch.linalg.solve(kernel(x[train], x[train]) + penalty * torch.eye(50).double(), answers[train].double() * 2 - 1)
        for other, y in found.items():
            theirs = ((kernel(y[test], x[train]) @ alpha > 0) == (answers[test] == 1)).double().mean().item()
            if abs(mine[name][other] - theirs) > 1e-9:
                return False
    return mine["甲"]["甲"] > 0.8 and len({value for row in mine.values() for value in row.values()}) > 1


def finetune_right(ns):
    """一轮也不练，与整个模型从头走一遍的相同；练了，数学上相同的两种办法答得相同，也练得会；换一种办法用，就不同。"""
    ns.LENGTH, ns.LEARNING_RATE = 14, 3e-2
    generator = torch.Generator().manual_seed(6)
    answers = torch.tensor([0, 1] * 40)
    messages = [torch.randint(0, 90, (int(torch.randint(3, 12, (1,), generator=generator)),), generator=generator).tolist() for _ in answers]
    for message, answer in zip(messages, answers.tolist()):
        message[-1] = 91 + answer  # 答案写在最后一个词元里
    ns.load_model = lambda name: (tiny(ns), None)
    ns.load_data = lambda path, tokenizer, count: (messages, answers, PAD)
    before = ns.finetune(None, tuple(ns.WAYS), (40, 40), 0, 3)
    torch.manual_seed(3)
    head, test = torch.nn.Linear(16, 2), torch.randperm(80, generator=torch.Generator().manual_seed(3))[40:]
    for way, how in ns.WAYS.items():
        with torch.no_grad():
            right = head(ns.vectors(tiny(ns), messages, PAD, how)[test, 0]).argmax(dim=1) == answers[test]
        if any(abs(row[way] - right.double().mean().item()) > 1e-9 for row in before.values()):
            return False
    found = ns.finetune(None, ("真词元", "左＋掩码＋位置", "书上的"), (40, 40), 4, 0)
    same = [found[a][b] for a in ("真词元", "左＋掩码＋位置") for b in ("真词元", "左＋掩码＋位置")]
    return max(same) - min(same) < 0.03 and min(same) > 0.9 and found["真词元"]["书上的"] < 0.85


CHECKS = [layout_right, mask_right, positions_right, right_padding_is_harmless, left_padding_needs_the_mask, masked_pads_are_invisible, untuned_right, probe_right, finetune_right]
BROKEN = [
    (layout_right, "slice(length - len(message), length)", "slice(length - len(message) - 1, length - 1)"),
    (layout_right, "ids[row, where], real[row, where] = torch.tensor(message), True", "ids[row, where], real[row] = torch.tensor(message), ids[row] != pad_id"),
    (mask_right, "(mask | ~real[:, None, None, :])", "(mask | ~real[:, None, :, None])"),
    (mask_right, "(mask | ~real[:, None, None, :])", "(mask | real[:, None, None, :])"),
    (mask_right, "(mask | ~real[:, None, None, :])", "(mask & ~real[:, None, None, :])"),
    (mask_right, ".triu(diagonal=1)[None, None].expand", ".triu(diagonal=0)[None, None].expand"),
    (positions_right, "real.cumsum(dim=1) - 1", "real.cumsum(dim=1)"),
    (positions_right, "(real.cumsum(dim=1) - 1).clamp(min=0)", "(real.cumsum(dim=1) - 1)"),
    (right_padding_is_harmless, "real.sum(dim=1) - 1]", "real.sum(dim=1) - 2]"),
    (right_padding_is_harmless, "(outputs * real[:, :, None]).sum(dim=1)", "outputs.sum(dim=1)"),
    (right_padding_is_harmless, "/ real.sum(dim=1, keepdim=True)", "/ real.shape[1]"),
    (left_padding_needs_the_mask, "(real.cumsum(dim=1) - 1).clamp(min=0) if shifted else torch.arange", "torch.arange(real.shape[1]).expand(real.shape) if shifted else torch.arange"),
    (left_padding_needs_the_mask, "pos_embeds = self.pos_emb(positions)", "pos_embeds = self.pos_emb(torch.arange(in_idx.shape[1]))"),
    (masked_pads_are_invisible, "& ~torch.eye(t, dtype=torch.bool)", "& True"),
    (masked_pads_are_invisible, "        mask = (mask | ~real[:, None, None, :])", "        mask = (mask | ~real[:1, None, None, :])"),
    (untuned_right, "max(share, 1 - share)", "share"),
    (untuned_right, "torch.manual_seed(seed)\n    logits", "torch.manual_seed(0)\n    logits"),
    (probe_right, "alpha / ready[name][train].square().sum(dim=1).mean(), alpha.sum()", "alpha, alpha.sum()"),
    (probe_right, ".mean(), alpha.sum()", ".mean(), 0.0"),
    (probe_right, "((y - center) / spread).double()", "((y - y[train].mean(dim=0)) / y[train].std(dim=0)).double()"),
    (finetune_right, "(answer(model, other, test)", "(answer(model, name, test)"),
    (finetune_right, "for block in start.trf_blocks[:-1]:", "for block in start.trf_blocks[:-2]:"),
    (finetune_right, "part in zip(x.split(64), mask.split(64))", "part in zip(x.split(64), mask.split(64)[:1] * 2)"),
    (finetune_right, "optimizer.step()", "pass"),
    (finetune_right, "torch.manual_seed(seed)  # 输出层", "pass  # 输出层"),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_right(check):
    module = load(name="fresh_padding")  # 检查会改它的常量：各用各的
    assert check(module)
    del sys.modules["fresh_padding"]


@pytest.mark.parametrize("check, old, new", BROKEN, ids=lambda value: value.__name__ if callable(value) else "")
def test_broken_is_seen(check, old, new, tmp_path):
    """把那一处改坏，检查就不成立（或出错）：检查不是摆设。"""
    document, start, code = SCRIPT.read_text(encoding="utf-8").partition("\nimport argparse\n")  # 文档的「动手改」里也写着这些
    assert code.count(old) == 1, old
    path = tmp_path / "exp_padding_position.py"
    path.write_text(document + start + code.replace(old, new), encoding="utf-8")
    broken = load(path, "broken_padding")
    try:
        assert not check(broken)
    except (RuntimeError, IndexError, ValueError):
        pass
    finally:
        del sys.modules["broken_padding"]


# ---- 与别人写的相同；整个脚本 ----


def test_our_gpt_is_the_books(ns):
    """掩码和位置由外面给的 GPTModel，装得上书上的权重，接上输出层，logits 相同。"""
    theirs = pytest.importorskip("llms_from_scratch.ch04").GPTModel
    torch.manual_seed(1)
    book = theirs(GPT).eval()
    mine = ns.GPTModel(GPT)
    mine.load_state_dict(book.state_dict())
    ids = torch.randint(97, (2, 7))
    real = torch.ones(2, 7, dtype=torch.bool)
    with torch.no_grad():
        torch.testing.assert_close(mine.out_head(mine.eval()(ids, ns.attention_mask(real, False), ns.positions_of(real, False))), book(ids), atol=1e-5, rtol=1e-4)


def test_masked_gpt_is_transformers(ns):
    """左填充、掩码、位置：与 transformers 的 GPT-2 相同。"""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(2)
    config = transformers.GPT2Config(vocab_size=97, n_positions=32, n_embd=16, n_layer=3, n_head=4, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0, attn_implementation="eager")
    theirs, mine = transformers.GPT2Model(config).eval(), tiny(ns)
    for block in theirs.h:
        block.attn.c_attn.bias.data.zero_()  # 书上的 Q、K、V 没有偏置
    with torch.no_grad():
        mine.tok_emb.weight.copy_(theirs.wte.weight), mine.pos_emb.weight.copy_(theirs.wpe.weight)
        for a, b in zip(mine.trf_blocks, theirs.h):
            for layer, part in zip((a.att.W_query, a.att.W_key, a.att.W_value), b.attn.c_attn.weight.split(16, dim=1)):
                layer.weight.copy_(part.T)
            for layer, other in ((a.att.out_proj, b.attn.c_proj), (a.ff["layers"][0], b.mlp.c_fc), (a.ff["layers"][2], b.mlp.c_proj)):
                layer.weight.copy_(other.weight.T), layer.bias.copy_(other.bias)
            for layer, other in ((a.norm1, b.ln_1), (a.norm2, b.ln_2)):
                layer.scale.copy_(other.weight), layer.shift.copy_(other.bias)
        ids, real = ns.lay_out(some(), "左", PAD, 20)
        positions = ns.positions_of(real, True)
        ours = mine(ids, ns.attention_mask(real, True), positions)
        expected = theirs(input_ids=ids, attention_mask=real.long(), position_ids=positions).last_hidden_state
    torch.testing.assert_close(ours[real], expected[real], atol=1e-4, rtol=1e-3)


def run(ns, monkeypatch, capsys, tmp_path, *arguments):
    monkeypatch.setattr(ns, "OUTPUTS", tmp_path / "outputs")
    monkeypatch.setattr(sys, "argv", ["exp_padding_position.py", *arguments])
    code = 0
    try:
        ns.main()
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def test_quick(ns, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("LLM_DATA_DIR", "")
    code, out, _ = run(ns, monkeypatch, capsys, tmp_path, "--quick")
    assert code == 0 and "不下结论" in out and "✗" not in out and "±" not in out and out.count("✓") == 7
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir()) == ["padding_position", "padding_position_quick.png"]


def test_bad_input_is_one_sentence(ns, monkeypatch, capsys, tmp_path):
    code, _, error = run(ns, monkeypatch, capsys, tmp_path, "--seeds", "3")
    assert code == 2 and "--seeds" in error.splitlines()[-1] and "Traceback" not in error and not (tmp_path / "outputs").exists()
