"""exp_finetune_ablation：模型与原版相同，挑位置、存中间结果、累积、忽略、冻结都与另写的相同；弄坏了测试就变红；能续跑；坏参数。

运行：python -m pytest ch06/tests/test_finetune_ablation.py
用随机的小模型，不需要 SmolLM2。
"""

import copy
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "exp_finetune_ablation.py"
ROOT = SCRIPT.parents[2]
LLAMA = {"vocab_size": 60, "context_length": 64, "emb_dim": 16, "n_heads": 4, "n_layers": 3, "hidden_dim": 24, "n_kv_groups": 2, "rope_base": 10_000, "rope_freq": None, "norm_eps": 1e-5}
GPT = {"vocab_size": 60, "context_length": 64, "emb_dim": 16, "n_heads": 4, "n_layers": 3, "drop_rate": 0.0, "qkv_bias": False}


def load(path=SCRIPT, name="exp_finetune_ablation"):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # inspect.getsource、spawn 要找得到它
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ns():
    yield load()
    del sys.modules["exp_finetune_ablation"]


def toy(ns, kind="LlamaModel", n=24, seed=0):
    """随机的小模型，n 条长短不一的短信；一类爱用大的编号。填充词元是 7。"""
    torch.manual_seed(seed)
    cfg = LLAMA if kind == "LlamaModel" else GPT
    labels = torch.tensor([0, 1] * (n // 2))
    messages = [torch.randint(10 + 20 * int(label), 40 + 20 * int(label), (length,)) for label, length in zip(labels, torch.randint(2, 11, (n,)).tolist())]
    return SimpleNamespace(kind=getattr(ns, kind), cfg=cfg, state=getattr(ns, kind)(cfg).state_dict(), pad=7, messages=messages, labels=labels, answers=labels.double() * 2 - 1, train=range(n - 8), test=range(n - 8, n))


def lengths_of(base, rows):
    return torch.tensor([len(base.messages[i]) for i in rows])


def setting_of(ns, **change):
    return ns.BASELINE | {"blocks": 3, "padded": 12, "labels": 16, "timed": False} | change


def prepared(ns, base):
    """prepare 换成小模型；存下的中间结果清空。"""
    ns.features.cache_clear()
    ns.prepare = lambda *_: base
    return ("toy", "", 36, False)


# ---- 每条检查返回成立吗；弄坏代码之后，它必须不成立 ----


def blocks_right(ns):
    """第几块到第几块：与原版的模型一块一块走相同；接着算与从头算相同。"""
    for kind, home in (("LlamaModel", "ch05/experiments/exp_gpt_to_llama.py"), ("GPTModel", "ch06/experiments/exp_pretraining_worth.py")):
        base = toy(ns, kind)
        mine, theirs = base.kind(base.cfg), getattr(original(home), kind)(base.cfg)
        mine.load_state_dict(base.state), theirs.load_state_dict(base.state)
        ids, stream = torch.randint(60, (2, 9)), []
        for block in theirs.trf_blocks:
            block.register_forward_hook(lambda _m, _i, out, stream=stream: stream.append(out))
        whole = theirs(ids)
        middle = mine(ids, stop=2)
        late = [whole, mine(middle, 2), mine(ids, 0)]
        if not (torch.allclose(middle, stream[1], atol=1e-5) and torch.allclose(late[0], late[1], atol=1e-5) and torch.allclose(late[0], late[2], atol=1e-5)):
            return False
        if not torch.allclose(mine(ids, pick=lambda x: x[:, 3]), whole[:, 3], atol=1e-5):
            return False
    return True


def original(path, cache={}):  # noqa: B006
    if path not in cache:
        cache[path] = load(ROOT / path, Path(path).stem)
    return cache[path]


def mask_right(ns):
    """有因果掩码，后面的词元改了，前面的不变，自己看得见自己；没有，就变。"""
    for kind in ("LlamaModel", "GPTModel"):
        base = toy(ns, kind)
        ids = torch.randint(60, (1, 9))
        changed = torch.cat([ids[:, :-1], (ids[:, -1:] + 1) % 60], dim=1)
        for causal in (True, False):
            model = ns.build(base, setting_of(ns, causal=causal), 1)
            same = torch.equal(model(ids)[:, :-1], model(changed)[:, :-1])
            if same != causal or not model(ids).isfinite().all():
                return False
    return True


def take_right(ns):
    """答在哪里：与一条一条、不填充地算的相同。"""
    base = toy(ns)
    model, rows = ns.build(base, setting_of(ns), 1), list(range(8))
    items = [F.pad(base.messages[i], (0, 12 - len(base.messages[i])), value=7) for i in rows]
    padded = model(torch.stack(items))
    alone = [model(base.messages[i][None])[0] for i in rows]
    wanted = {"last": padded[:, -1], "first": padded[:, 0], "mean": padded.sum(dim=1) / 12, "flexible": torch.stack([each[-1] for each in alone])}
    return all(torch.allclose(ns.classify(model, items, 0, position, lengths_of(base, rows)), want, atol=1e-5) for position, want in wanted.items())


def loss_right(ns):
    """损失：与一条一条加起来的相同；全被忽略时是 0，梯度也是 0。"""
    logits, labels = torch.randn(6, 2, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 1, 0, 1, 1])
    for ignore in (-100, 50256, 0, 1):
        kept = [-torch.log_softmax(row, 0)[label] for row, label in zip(logits, labels) if label != ignore]
        if not torch.allclose(ns.classification_loss(logits, labels, ignore), sum(kept) / len(kept), atol=1e-6):
            return False
    alone = torch.randn(3, 2, requires_grad=True)
    loss = ns.classification_loss(alone, torch.zeros(3, dtype=torch.long), 0)
    loss.backward()
    return loss.item() == 0 and bool((alone.grad == 0).all())


def train_right(ns):
    """与另写的循环走到同一处；每一步都清零；最后不满的一批不要；累积 4 条与一批 4 条相同。"""
    base, results = toy(ns), []
    rows = list(range(14))
    items, labels, lengths = [F.pad(base.messages[i], (0, 12 - len(base.messages[i])), value=7) for i in rows], base.labels[rows], lengths_of(base, rows)
    for change in ({"batch": 4}, {"batch": 1, "accumulate": 4}):
        setting = setting_of(ns, train="all", epochs=2, position="flexible", **change)
        model = ns.build(base, setting, 1)
        losses = ns.train(model, items, labels, lengths, 0, setting, 5)
        results.append((model, losses))
    theirs = ns.build(base, setting_of(ns, train="all"), 1)
    optimizer, generator, expected = torch.optim.AdamW(theirs.parameters(), lr=ns.BASELINE["lr"], weight_decay=0.1), torch.Generator().manual_seed(5), []
    for _ in range(2):
        order = torch.randperm(14, generator=generator)
        for i in range(0, 12, 4):
            part = order[i : i + 4]
            loss = F.cross_entropy(torch.stack([theirs(items[j][None])[0, lengths[j] - 1] for j in part]), labels[part])
            grads = torch.autograd.grad(loss, list(theirs.parameters()))
            for p, g in zip(theirs.parameters(), grads):
                p.grad = g
            optimizer.step()
            expected.append(loss.item())
    for model, losses in results:
        if losses != pytest.approx(expected, abs=1e-4) or not all(torch.allclose(a, b, atol=2e-4) for a, b in zip(model.parameters(), theirs.parameters())):
            return False
    return True


def frozen_right(ns):
    """哪些参加训练；训练之后，只有它们变了，存下的那几块都没有变。"""
    for kind in ("LlamaModel", "GPTModel"):
        base = toy(ns, kind)
        where = prepared(ns, base)
        names = {"head": ("out_head",), "last_block": ("trf_blocks.2.", "final_norm", "out_head"), "two_blocks": ("trf_blocks.1.", "trf_blocks.2.", "final_norm", "out_head"), "all": ("",)}
        for train, starts in names.items():
            setting, rows = setting_of(ns, train=train, epochs=1), tuple(range(16))
            model, stop = ns.build(base, setting, 1), ns.frozen_blocks(setting)
            before = copy.deepcopy(model.state_dict())
            ns.train(model, ns.features(where, 12, True, stop, rows), base.labels[list(rows)], lengths_of(base, rows), stop, setting, 1)
            moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
            wanted = {name for name, _ in model.named_parameters() if name.startswith(starts) and not (train == "all" and name == "pos_emb.weight")}
            if moved - {"pos_emb.weight"} != wanted or moved & {name for name, _ in model.named_parameters() if any(name.startswith(f"trf_blocks.{i}.") for i in range(stop))}:
                return False
    return True


def lora_right(ns):
    """每个线性层都挂上，包括输出层；刚挂上不变；缩放是书上的 16 倍；原来的层除了新的输出层都冻结。"""
    base = toy(ns)
    plain = ns.build(base, setting_of(ns, train="head"), 1)
    model = ns.build(base, setting_of(ns, **ns.LORA), 1)
    ids = torch.randint(60, (2, 5))
    layers = [module for module in model.modules() if isinstance(module, ns.LinearWithLoRA)]
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    wanted = {name for name, _ in model.named_parameters() if ".lora." in name or name.startswith("out_head")}
    return len(layers) == 3 * 7 + 1 and torch.equal(model(ids), plain(ids)) and {layer.lora.scaling for layer in layers} == {16.0} and trained == wanted


def features_right(ns):
    """与一条一条走的相同；填充用的是填充词元；0 块就是编号。"""
    for padded in (12, 0):
        base = toy(ns)
        where = prepared(ns, base)
        model, rows = ns.build(base, setting_of(ns), 9), (3, 1, 8)
        for stop in (0, 2):
            for i, found in zip(rows, ns.features(where, padded, True, stop, rows)):
                ids = base.messages[i].tolist() + [7] * max(0, padded - len(base.messages[i]))
                wanted = torch.tensor(ids) if stop == 0 else model(torch.tensor([ids]), stop=stop)[0]
                if found.shape != wanted.shape or not torch.allclose(found, wanted, atol=1e-5):
                    return False
    return True


def weights_right(ns):
    """预训练的原样装进来，换种子只换输出层；随机的与它不同，换种子就换。"""
    base = toy(ns)
    one, two = ns.build(base, setting_of(ns), 1), ns.build(base, setting_of(ns), 2)
    loaded = all(torch.equal(p, base.state[name]) for name, p in one.named_parameters() if not name.startswith("out_head"))
    drawn = [ns.build(base, setting_of(ns, weights="random"), seed).trf_blocks[0].att.W_query.weight for seed in (1, 1, 2)]
    return loaded and one.out_head.weight.shape == (2, 16) and not torch.equal(one.out_head.weight, two.out_head.weight) and torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], one.trf_blocks[0].att.W_query.weight)


def finetune_right(ns):
    """学得会；计时不影响结果；测试集的短信从没有拿来训练。"""
    base = toy(ns, n=48)
    base.test = range(40, 48)
    base.train = range(40)
    where, seen = prepared(ns, base), []
    real = ns.train
    ns.train = lambda model, items, *rest: seen.append(items) or real(model, items, *rest)
    setting = setting_of(ns, position="mean", train="all", labels=32, epochs=6, lr=1e-2)
    plain, timed = (ns.finetune(where, "", tuple(sorted((setting | {"timed": timed}).items())), 1) for timed in (False, True))
    ns.train = real
    tests = [F.pad(base.messages[i], (0, 12 - len(base.messages[i])), value=7) for i in base.test]
    leaked = any(torch.equal(item, test) for items in seen for item in items for test in tests)
    return plain["losses"] == timed["losses"] and plain["accuracy"] == timed["accuracy"] and plain["accuracy"] >= 0.75 and timed["seconds"] > 0 and "seconds" not in plain and not leaked


CHECKS = [blocks_right, mask_right, take_right, loss_right, train_right, frozen_right, lora_right, features_right, weights_right, finetune_right]
BROKEN = [
    (blocks_right, "for block in self.trf_blocks[start:stop]:  # 改：只走其中几块\n            x = block(x, mask", "for block in self.trf_blocks[:stop]:\n            x = block(x, mask"),
    (blocks_right, "self.cos, self.sin, pick if block is self.trf_blocks[-1] else None)", "self.cos, self.sin, pick if block is self.trf_blocks[0] else None)"),
    (blocks_right, "x = block(x, pick if block", "x = block(x, None if block"),
    (mask_right, ".triu(diagonal=1) & self.causal", ".triu(diagonal=1)"),
    (mask_right, ".triu(diagonal=1) & self.causal", ".triu(diagonal=2) & self.causal"),
    (mask_right, "block.att.mask.zero_()", "block.att.mask.clone().zero_()"),
    (take_right, "torch.arange(len(x)), lengths - 1]", "torch.arange(len(x)), lengths]"),
    (take_right, "torch.arange(len(x)), lengths - 1]", "torch.arange(len(x)), lengths - 2]"),
    (take_right, '0 if position == "first" else -1', '0 if position == "last" else -1'),
    (take_right, "model(x, start).mean(dim=1)", "model(x, start)[:, -1]"),
    (loss_right, "(labels != ignore).sum().clamp(min=1)", "len(labels)"),
    (loss_right, "(labels != ignore).sum().clamp(min=1)", "(labels != ignore).sum()"),
    (loss_right, "ignore_index=ignore", "ignore_index=-100"),
    (train_right, "            optimizer.zero_grad()\n", ""),
    (train_right, ' / setting["accumulate"]', ""),
    (train_right, "[: len(items) // size * size]", ""),
    (train_right, "lengths[part])  # (b, 2)", "lengths)  # (b, 2)"),
    (train_right, "labels[part], setting", "labels[rows][: len(part)], setting"),
    (frozen_right, "model.requires_grad_(False)", "model.requires_grad_(True)"),
    (frozen_right, "[*model.trf_blocks[-2:], model.final_norm]", "[*model.trf_blocks[-1:], model.final_norm]"),
    (frozen_right, "[*model.trf_blocks[-1:], model.final_norm]", "[*model.trf_blocks[:1], model.final_norm]"),
    (frozen_right, '"two_blocks": 2}', '"two_blocks": 1}'),
    (lora_right, '"alpha": 256.0', '"alpha": 16.0'),
    (lora_right, "self.B = nn.Parameter(torch.zeros(rank, out_dim))", "self.B = nn.Parameter(torch.randn(rank, out_dim))"),
    (lora_right, "            replace_linear_with_lora(module, rank, alpha)", "            pass"),
    (features_right, "value=base.pad", "value=0"),
    (features_right, "stop=stop)):", "stop=stop - 1)):"),
    (weights_right, 'if setting["weights"] == "pretrained":', "if False:"),
    (weights_right, "    torch.manual_seed(seed)\n    model = base.kind", "    torch.manual_seed(0)\n    model = base.kind"),
    (finetune_right, '"lr": 0.0', '"lr": 1e-2'),
    (finetune_right, "labelled(base.train, base.answers", "labelled(base.test, base.answers"),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_right(check):
    assert check(load(name="exp_finetune_ablation_fresh"))  # 有的检查要换掉里面的函数，各用一份


@pytest.mark.parametrize("check, old, new", BROKEN, ids=lambda value: value.__name__ if callable(value) else "")
def test_broken_is_seen(check, old, new, tmp_path):
    """把那一处改坏，检查就不成立（或出错）：检查不是摆设。"""
    document, start, code = SCRIPT.read_text(encoding="utf-8").partition("\nimport argparse\n")  # 文档的「动手改」里也写着这些
    assert code.count(old) == 1, (code.count(old), old)
    path = tmp_path / "exp_finetune_ablation.py"
    path.write_text(document + start + code.replace(old, new), encoding="utf-8")
    try:
        assert not check(load(path, "broken"))
    except (RuntimeError, IndexError, ValueError, KeyError, AttributeError, TypeError):
        pass


# ---- 零碎 ----


def test_each_row_changes_one_thing(ns):
    """书上的 19 行都有，只差一样（LoRA 的秩和缩放、随机权重要训练全部，算一样）；块数换成书上的大小。"""
    variants = ns.choose_variants(6, 2, 4, 9)
    assert sorted({row for row, _, _ in variants.values() if row}) == list(range(1, 20))
    for name, (row, _, change) in variants.items():
        assert set(change) <= set(ns.BASELINE) | {"blocks"}
        extra = set(change) - {"rank", "alpha"} - ({"blocks"} if row in (9, 12) else set()) - ({"weights"} if row == 10 else set()) - ({"accumulate", "batch"} if row in (14, 15) else set())
        assert len(extra) <= 1, name


def test_book_told(ns):
    """书上的一次运行：差一两个百分点分不出，差十几个才分得出。"""
    words = {score: ns.book_told(score) for score in (95.0, 75.0, 72.0, 98.33, 96.67, 84.67, 78.33, 93.67)}
    assert {score for score, word in words.items() if word == "更低"} == {75.0, 72.0, 84.67, 78.33} and "更高" not in words.values()
    assert [ns.told(*each) for each in ((1.0, 0.9), (-1.0, 0.9), (1.0, 1.0), (0.0, 0.0))] == ["更高", "更低", "分不出", "分不出"]


def test_prepare_keeps_only_used_rows(ns, tmp_path, monkeypatch):
    """词表只留用到的行，模型的输出一点不变；短信截短，填充词元是 <|endoftext|>。"""
    tiny_mini(tmp_path, ns)
    monkeypatch.setenv("LLM_DATA_DIR", str(tmp_path))
    path = tmp_path / "few.tsv"
    path.write_text("".join(f"{label}\t{label} message number {i} " + "very long indeed " * i + "\n" for i in range(10) for label in ("ham", "spam")), encoding="utf-8")
    ns.prepare.cache_clear()
    base = ns.prepare("mini", str(path), 20, False)
    saved = torch.load(tmp_path / "gpt_mini.pth", weights_only=True)
    full, short = ns.GPTModel(saved["config"]), ns.GPTModel(base.cfg)
    full.load_state_dict(saved["model"])
    short.load_state_dict(base.state)
    tokenizer = ns.tiktoken.get_encoding("gpt2")
    texts, answers, parts = ns.load_data(path, False)
    assert base.cfg["vocab_size"] < 60 and max(map(len, base.messages)) == 20 and [base.train, base.validation, base.test] == parts
    for text, ids, label in zip(texts, base.messages, base.labels):
        assert torch.equal(full(torch.tensor([tokenizer.encode_ordinary(text)[:20]]), stop=2), short(ids[None], stop=2)) and label == text.startswith("spam")
    assert torch.equal(base.state["tok_emb.weight"][base.pad], saved["model"]["tok_emb.weight"][50256])
    ns.prepare.cache_clear()


def test_results_survive_cosmetic_edits(ns, tmp_path):
    """改文档、改画图的函数，存着的还能用；改训练，就重新算。"""
    source = SCRIPT.read_text(encoding="utf-8")
    changes = [lambda s: s, lambda s: s.replace('"""微调。', '"""微调一次。'), lambda s: s.replace('title="准确率"', 'title="对了几成"'), lambda s: s.replace("weight_decay=0.1", "weight_decay=0.2")]
    names = []
    for number, change in enumerate(changes):
        path = tmp_path / f"copy{number}.py"
        path.write_text(change(source), encoding="utf-8")
        module = load(path, f"copy{number}")
        module.side_by_side(module.frozen_blocks, [], tmp_path)
        fake = lambda case: {"case": case}  # noqa: E731
        fake = type(fake)(fake.__code__, {"__file__": str(path)})
        module.side_by_side(fake, [("a",)], tmp_path / str(number), workers=1)
        names.append([each.name for each in (tmp_path / str(number)).iterdir()])
    assert names[0] == names[1] == names[2] != names[3]


def test_losses_not_finite(ns):
    base = toy(ns)
    setting = setting_of(ns, train="all", lr=1e30, epochs=3)
    items = [F.pad(base.messages[i], (0, 12 - len(base.messages[i]))) for i in range(16)]
    with pytest.raises(ValueError, match="训练停下"):
        ns.train(ns.build(base, setting, 1), items, base.labels[:16], lengths_of(base, range(16)), 0, setting, 1)
    with pytest.raises(ValueError, match="不够一步"):
        ns.train(ns.build(base, setting, 1), items[:4], base.labels[:4], lengths_of(base, range(4)), 0, setting, 1)


def tiny_mini(folder, ns):
    """与 mini 同样格式的小权重。"""
    torch.manual_seed(0)
    cfg = {"vocab_size": 50257, "context_length": 256, "emb_dim": 12, "n_heads": 2, "n_layers": 4, "drop_rate": 0.1, "qkv_bias": False}
    torch.save({"config": cfg, "model": ns.GPTModel(cfg).state_dict()}, folder / "gpt_mini.pth")


def run(ns, monkeypatch, capsys, folder, *arguments):
    monkeypatch.setattr(ns, "OUTPUTS", folder / "outputs")
    monkeypatch.setenv("LLM_DATA_DIR", str(folder))
    monkeypatch.setattr(sys, "argv", ["exp_finetune_ablation.py", *arguments])
    ns.prepare.cache_clear(), ns.features.cache_clear()
    code = 0
    try:
        ns.main()
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def test_quick_resumes(ns, monkeypatch, capsys, tmp_path):
    """做到一半停下，做完的都在；再运行只做剩下的；第三次什么也不做。"""
    tiny_mini(tmp_path, ns)
    calls, real = [], ns.finetune

    def counted(*case):
        calls.append(case)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*case)

    counted.__globals__["__file__"] = str(SCRIPT)
    counted = type(counted)(counted.__code__, ns.__dict__ | {"calls": calls, "real": real}, closure=counted.__closure__)
    monkeypatch.setattr(ns, "finetune", counted)
    code, out, _ = run(ns, monkeypatch, capsys, tmp_path, "--quick")
    folder = tmp_path / "outputs" / "exp_finetune_ablation"
    assert code == 0 and "停下了" in out and len(list(folder.iterdir())) == 3
    code, out, error = run(ns, monkeypatch, capsys, tmp_path, "--quick")
    assert code == 0 and "不下结论" in out and "✗" not in out and "更高" not in out and "分不出" not in out, out + error
    assert len(calls) == 1 + len(list(folder.iterdir())) and all("accuracy" in json.loads(path.read_text(encoding="utf-8")) for path in folder.iterdir())
    done = len(calls)
    assert run(ns, monkeypatch, capsys, tmp_path, "--quick")[1] == out and len(calls) == done
    assert [path.name for path in (tmp_path / "outputs").iterdir() if path.is_file()] == ["finetune_ablation_quick.png"]


def test_labels_quick(ns, monkeypatch, capsys, tmp_path):
    tiny_mini(tmp_path, ns)
    code, out, error = run(ns, monkeypatch, capsys, tmp_path, "--quick", "--labels")
    assert code == 0 and "不下结论" in out and "✗" not in out and "值" not in out, out + error


def test_judge_labels(ns, capsys):
    """最差的种子不低于对方最好的，才算。"""
    results = {(ns.PRETRAINED, n): {1: {"accuracy": a}, 2: {"accuracy": a + 0.02}} for n, a in zip(ns.LABEL_STUDY[ns.PRETRAINED][0], (0.5, 0.9, 0.95, 0.97))}
    results |= {(ns.RANDOM, n): {1: {"accuracy": a}, 2: {"accuracy": a + 0.02}} for n, a in zip(ns.LABEL_STUDY[ns.RANDOM][0], (0.7, 0.88, 0.94))}
    ns.judge_labels(results, False)
    lines = capsys.readouterr().out.splitlines()[-4:]
    assert "说不准" in lines[0] and "标注 256 条" in lines[1] and "8 倍" in lines[1] and "4 倍" in lines[2] and "标注 1045 条" in lines[3]


@pytest.mark.parametrize("arguments, word", [(["--seeds", "4"], "--seeds"), (["--seeds", "11"], "--seeds")], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_bad_arguments(ns, monkeypatch, capsys, tmp_path, arguments, word):
    code, _, error = run(ns, monkeypatch, capsys, tmp_path, *arguments)
    assert code == 2 and word in error.splitlines()[-1] and "Traceback" not in error


def test_missing_model_and_bad_data(ns, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(ns, "SMOLLM2", tmp_path / "没有.pth")
    code, _, error = run(ns, monkeypatch, capsys, tmp_path, "--model", "SmolLM2")
    assert code == 2 and "requirements-model.txt" in error.splitlines()[-1]
    tiny_mini(tmp_path, ns)
    (tmp_path / "messages.tsv").write_text("这不是短信\n", encoding="utf-8")
    code, _, error = run(ns, monkeypatch, capsys, tmp_path, "--quick")
    assert code == 2 and "第 1 条" in error.splitlines()[-1] and not (tmp_path / "outputs").exists()
