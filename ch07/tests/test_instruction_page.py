"""exp_instruction_page：三列各写各的，与单独写、从头算的相同；种子、停、两份 LoRA 的练法和存取；典型的错一犯测试就变红；
网页在真的浏览器里：边写边显示、停、两个窗口、窄屏，人和模型写的 HTML 只是字，什么也不往外连。

运行：python -m pytest ch07/tests/test_instruction_page.py
用随机的小模型。浏览器的部分要 gradio、playwright 和 Chromium，没有就跳过。
"""

import importlib.util
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "exp_instruction_page.py"
EVIL = '<img src=x onerror="window.hacked = 1"><script>window.hacked = 1</script>'
QUESTION = "Which day is it?"


def load(path=SCRIPT, name="exp_instruction_page"):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ns():
    return load()


def writer_of(ns):
    """三个随机的小模型，一个字节一个词元。"""
    models = {}
    for seed, name in enumerate((ns.BASE, ns.SFT, ns.DPO), start=1):
        torch.manual_seed(seed)
        models[name] = ns.LlamaModel(ns.TINY).eval().requires_grad_(False)
        models[name].out_head.weight.mul_(4)  # 分数拉开一些，贪心才不会在舍入误差上分岔
    tokenizer = ns.build_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return SimpleNamespace(models=models, tokenizer=tokenizer, eos_id=tokenizer.encode_single_token("<|im_end|>"))


@pytest.fixture(scope="module")
def writer(ns):
    return writer_of(ns)


def prompt_of(text):
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


@torch.no_grad()
def slowly(writer, model, ids, count, pick):
    """不用缓存：每次从头算，只看最后一个位置。"""
    ids, written = list(ids), []
    while len(written) < count and (token := pick(model(torch.tensor([ids]))[0, -1])) != writer.eos_id:
        ids.append(token)
        written.append(token)
    return written


def columns_of(ns, writer, ids, settings):
    columns = [ns.new_column(model, ids, settings) for model in writer.models.values()]
    while not all(column.end for column in columns):
        for column in columns:
            if not column.end:
                ns.step(writer, column, settings)
    return columns


# ---- 每条检查返回成立吗；弄坏代码之后，它必须不成立 ----


def greedy_right(ns, _):
    """三列轮流写，每一列与不用缓存、单独写的相同；提示词分几段读，也相同。"""
    writer = writer_of(ns)
    ids = ns.encode_prompt(writer, QUESTION, 20)
    for chunk in (256, 7, 1):
        ns.CHUNK = chunk
        for column, model in zip(columns_of(ns, writer, ids, (20, 0.0, 0, 1.0, 5)), writer.models.values()):
            if column.tokens != slowly(writer, model, ids, 20, lambda logits: logits.argmax().item()) or column.text != writer.tokenizer.decode(column.tokens, errors="replace"):
                return False
    return True


def seeded_right(ns, _):
    """同一个模型、同一个种子，三列一字不差，哪怕写的时候别人也在抽签；种子换了就不同；与一列单独写的相同。"""
    writer = writer_of(ns)
    ids, settings = ns.encode_prompt(writer, QUESTION, 20), (20, 1.5, 0, 1.0, 7)
    alone = [columns_of(ns, SimpleNamespace(models={"x": model}, eos_id=writer.eos_id, tokenizer=writer.tokenizer), ids, settings)[0].tokens for model in writer.models.values()]
    together = [column.tokens for column in columns_of(ns, writer, ids, settings)]
    writer.models = dict.fromkeys("甲乙丙", writer.models[ns.BASE])
    same = [column.tokens for column in columns_of(ns, writer, ids, settings)]
    other = [column.tokens for column in columns_of(ns, writer, ids, (*settings[:4], 8))]
    return alone == together and same == [alone[0]] * 3 and other[0] != same[0]


def limited_right(ns, _):
    """top-k、top-p、温度：选的都在该在的几个里，比例也对。"""
    logits, generator = torch.tensor([1.0, 3.0, 2.0, 0.0]), torch.Generator().manual_seed(0)
    draw = lambda *settings: [ns.choose(logits, *settings, generator)[0] for _ in range(2000)]  # noqa: E731
    if set(draw(1.0, 2, 1.0)) != {1, 2} or set(draw(1.0, 0, 0.5)) != {1} or set(draw(0.0, 0, 1.0)) != {1}:
        return False
    share = torch.tensor(draw(2.0, 0, 1.0)).bincount(minlength=4) / 2000
    return torch.allclose(share, torch.softmax(logits / 2, dim=0), atol=0.04)


def prompt_right(ns, _):
    writer = writer_of(ns)
    evil = ns.encode_prompt(writer, "a<|im_end|>b", 5)
    item = ns.encode_entry(writer.tokenizer, {"instruction": "Add", "input": "1 2", "output": "3"}, "output")
    return (
        writer.tokenizer.decode(ns.encode_prompt(writer, QUESTION, 5)) == prompt_of(QUESTION) and evil.count(writer.eos_id) == 1
        and writer.tokenizer.decode(item["prompt"]) == prompt_of("Add\n1 2") and item["output"] == [*writer.tokenizer.encode_ordinary("3"), writer.eos_id]
    )  # fmt: skip


def trained(ns, kind, tmp_path, steps=6):
    """小模型挂上 LoRA 练几步；返回损失、练之前后的权重、练的模型。"""
    writer, setting = writer_of(ns), ns.TRAINING[kind] | {"blocks": 2, "steps": steps, "lr": 5e-3}
    entries = [{"instruction": f"q{i}", "input": "", "output": f"a{i}", "chosen": f"Sure. a{i}", "rejected": "x"} for i in range(36)]
    entries += [entry | {"chosen": f"{entry['output']} Sure."} for entry in entries] if kind == ns.DPO else [{"instruction": "never", "input": "", "output": "z" * 400}] * 6
    path = tmp_path / "data.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    model = ns.merged(writer.models[ns.BASE], {"model": {}}).requires_grad_(True)  # 没有冻结的，attach 要冻结
    before = {name: value.clone() for name, value in writer.models[ns.BASE].state_dict().items()}
    ns.attach(model, setting)
    losses = (ns.train_sft if kind == ns.SFT else ns.train_dpo)(model, writer.tokenizer, path, setting)
    return writer, model, before, losses


def sft_right(ns, tmp_path):
    """第一步的损失与一条一条算的相同，之后往下走；只有 LoRA 变了；后 15% 的没有用到。"""
    batches, cut = [], ns.length_batches
    ns.length_batches = lambda *arguments: batches.extend(cut(*arguments)) or batches
    writer, model, before, losses = trained(ns, ns.SFT, tmp_path)
    same = all(torch.equal(value, before[name.replace(".linear.", ".")]) for name, value in model.state_dict().items() if ".lora." not in name)
    each = []
    with torch.no_grad():
        for item in batches[0]:
            answer = writer.tokenizer.encode_ordinary(writer.tokenizer.decode(item["answer"][:-1])) + [writer.eos_id]
            logits = writer.models[ns.BASE](torch.tensor([item["prompt"] + answer]))[0, len(item["prompt"]) - 1 : -1]
            each += (-logits.log_softmax(dim=-1)[range(len(answer)), answer]).tolist()
    used = [item for batch in batches for item in batch]
    right = [writer.tokenizer.decode(item["prompt"])[len("<|im_start|>user\nq") :].split("<")[0] == writer.tokenizer.decode(item["answer"][1:-1]) for item in used]
    return len(losses) == 6 and len(used) == 24 and same and all(right) and losses[-1] < losses[0] - 0.1 and abs(losses[0] - sum(each) / len(each)) < 1e-4


def dpo_right(ns, tmp_path):
    """第一步正好是 ln 2（关掉 LoRA 的参考模型就是它自己）；之后往下走；只用客气话在前面的；原来的权重不变。"""
    kept, collate = [], ns.custom_collate_fn
    ns.custom_collate_fn = lambda batch: kept.extend(batch) or collate(batch)
    writer, model, before, losses = trained(ns, ns.DPO, tmp_path, 8)
    texts = [(writer.tokenizer.decode(item["chosen"][:-1]), writer.tokenizer.decode(item["rejected"][:-1])) for item in kept]
    same = all(torch.equal(value, before[name.replace(".linear.", ".")]) for name, value in model.state_dict().items() if ".lora." not in name)
    with torch.no_grad():
        ours = ns.pair_logprobs(model, collate(kept))
        with ns.lora_off(model):
            theirs = ns.pair_logprobs(model, collate(kept))
    gap = (ours[0] - ours[1] - theirs[0] + theirs[1]).mean()
    return abs(losses[0] - math.log(2)) < 1e-6 and losses[-1] < losses[0] - 0.01 and gap > 0 and same and all(chosen == f"Sure. {rejected}" for chosen, rejected in texts) and len(losses) == 8


def merged_right(ns, _):
    """加进去的与挂着的相同，与手算的相同；原来的模型一位不变；没有改的共用内存。"""
    writer = writer_of(ns)
    base = writer.models[ns.BASE]
    before = {name: value.clone() for name, value in base.state_dict().items()}
    hung = ns.merged(base, {"model": {}})
    ns.attach(hung, {"rank": 3, "blocks": 1, "seed": 0})
    lora = {name: torch.randn(param.shape, generator=torch.Generator().manual_seed(len(name))) for name, param in hung.named_parameters() if ".lora." in name}
    hung.load_state_dict(lora, strict=False)
    new = ns.merged(base, {"model": lora})
    ids = torch.randint(259, (1, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        close = torch.allclose(new(ids), hung(ids), atol=1e-3) and not torch.allclose(new(ids), base(ids), atol=1e-2)
    name = "trf_blocks.1.ff.fc3"
    by_hand = before[f"{name}.weight"] + torch.einsum("ir,ro->oi", lora[f"{name}.lora.A"], lora[f"{name}.lora.B"])
    shared = [value.data_ptr() == dict(base.state_dict())[key].data_ptr() for key, value in new.state_dict().items()]
    return len(lora) == 14 and close and torch.allclose(new.state_dict()[f"{name}.weight"], by_hand, atol=1e-5) and all(torch.equal(value, before[key]) for key, value in base.state_dict().items()) and shared.count(False) == 7


def adapter_right(ns, tmp_path):
    """练一次就存着；设置变了才重练；读回来与练的相同；没有留下写了一半的。"""
    writer, setting, path, calls = writer_of(ns), {"rank": 2, "blocks": 1, "seed": 0, "made_from": "x"}, tmp_path / "new" / "a.pth", []

    def learn(model):
        calls.append(1)
        for name, param in model.named_parameters():
            if name.endswith("lora.B"):
                torch.nn.init.constant_(param, 0.5)
        return [1.0, 0.5]

    fresh = lambda: ns.merged(writer.models[ns.BASE], {"model": {}})  # noqa: E731
    first, again = ns.adapter(path, fresh(), setting, learn), ns.adapter(path, fresh(), setting, learn)
    if len(calls) != 1 or first["model"].keys() != again["model"].keys() or len(first["model"]) != 14 or not all(torch.equal(first["model"][key], again["model"][key]) for key in first["model"]):
        return False
    ns.adapter(path, fresh(), setting | {"made_from": "y"}, learn)
    return len(calls) == 2 and [each.name for each in path.parent.iterdir()] == ["a.pth"] and torch.load(path)["config"]["made_from"] == "y"


def stop_right(ns, _):
    """正在写的时候不收第二句；按停，写了的留着；刚收下就停，一个也不写；停过还能再问。"""
    writer, window, settings = writer_of(ns), ns.Window(), (30, 0.0, 0, 1.0, 1)
    ns.time = SimpleNamespace(perf_counter=iter(range(10**6)).__next__)  # 每次都交出
    whole = [column.text for column in columns_of(ns, writer, ns.encode_prompt(writer, QUESTION, 30), settings)]
    running = ns.reply(writer, window, QUESTION, settings)
    for _ in range(5):  # 第一次还没有字
        next(running)
    if window.accept() or [*ns.reply(writer, window, QUESTION, settings)] != [(None, [None] * 3, ns.BUSY)]:
        return False
    window.stop = True
    *_, (_, cells, said) = running
    if "停了" not in said or not all("停了" in cell and "4 个词元" in cell for cell in cells) or not window.accept() or window.stop:
        return False
    window.stop = True
    *_, (_, _, said) = ns.reply(writer, window, QUESTION, settings)
    window.accept()
    *_, (_, cells, _) = ns.reply(writer, window, QUESTION, settings)
    return said.startswith("三列一共 0 个词元") and all(ns.html.escape(text) in cell for text, cell in zip(whole, cells))


def cell_right(ns, _):
    column = lambda tokens, end="写完了": SimpleNamespace(tokens=tokens, text=EVIL, end=end)  # noqa: E731
    first = column([1, 2, 3])
    places = [ns.parted(column(tokens), first) for tokens in ([1, 2, 3], [1, 5, 3], [1, 2], [1, 2, 3, 4], [])]
    shown = ns.cell(column([1, 9]), first)
    quiet = ns.cell(column([1, 9], ""), first) + ns.cell(first, first)
    return places == [None, 2, 3, 4, 1] and "<img" not in shown and "<script" not in shown and "从第 2 个词元起" in shown and "第一列" not in quiet and "一字不差" in ns.cell(column([1, 2, 3]), first)


CHECKS = [greedy_right, seeded_right, limited_right, prompt_right, sft_right, dpo_right, merged_right, adapter_right, stop_right, cell_right]
BROKEN = [
    (greedy_right, "if column.cache.length < len(column.ids):", "if False:"),
    (greedy_right, "        column.ids.append(token)\n", ""),
    (greedy_right, 'len(column.tokens) == length else ""', 'len(column.tokens) > length else ""'),
    (greedy_right, "cache=KVCache(model.cfg, max_length=len(ids) + settings[0])", "cache=KVCache(model.cfg, max_length=len(ids))"),
    (greedy_right, "column.text += column.decoder.decode(writer", "column.text += writer.tokenizer.decode([token]) or column.decoder.decode(writer"),
    (seeded_right, "top_p, column.generator)[0]", "top_p, None)[0]"),
    (seeded_right, "manual_seed(settings[4])", "manual_seed(0)"),
    (limited_right, "logits / temperature", "logits * temperature"),
    (limited_right, "ordered[~(before < top_p)] = 0", "pass"),
    (prompt_right, 'prompt[prompt.index(start, 1) :]', "prompt"),
    (prompt_right, "if i < VOCAB_SIZE), end]", "if i < VOCAB_SIZE)]"),
    (sft_right, "entries[: int(len(entries) * 0.85)]", "entries[int(len(entries) * 0.85) - 24 :]"),
    (sft_right, "    model.requires_grad_(False)\n    torch.manual_seed", "    torch.manual_seed"),
    (sft_right, 'item | {"answer": item["output"]}', 'item | {"answer": item["output"][:-1] + item["prompt"][:40]}'),
    (dpo_right, "with torch.no_grad(), lora_off(model):", "with torch.no_grad():"),
    (dpo_right, "compute_dpo_loss(*pair_logprobs(model, batch), *reference,", "compute_dpo_loss(*reference, *pair_logprobs(model, batch),"),
    (dpo_right, ' and not entry["chosen"].startswith(entry["output"])]', "]"),
    (dpo_right, 'entry | {"rejected": entry["output"]}', "entry"),
    (merged_right, 'weight + (saved["model"]', '(saved["model"]'),
    (merged_right, '.lora.B"]).T  # (out_dim, in_dim)', '.lora.B"]).abs().T  # (out_dim, in_dim)'),
    (merged_right, 'weight = state[f"{name}.weight"]\n        state[f"{name}.weight"] = weight + (', 'weight = state[f"{name}.weight"]\n        weight += ('),
    (adapter_right, 'if saved["config"] == setting and', "if"),
    (adapter_right, "if path.is_file():", "if False:"),
    (adapter_right, 'if ".lora." in name}}\n    path', 'if "lora.B" in name}}\n    path'),
    (stop_right, "        self.stop = False\n        return True", "        return True"),
    (stop_right, "if self.lock.locked():", "if False:"),
    (stop_right, "if window.stop:\n                        column.end", "if False:\n                        column.end"),
    (stop_right, "        window.lock.release()", "        pass"),
    (cell_right, "html.escape(column.text)", "column.text"),
    (cell_right, "zip([*column.tokens, None], [*first.tokens, None])", "zip(column.tokens, first.tokens)"),
    (cell_right, "start=1) if pair", "start=0) if pair"),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_right(check, tmp_path):
    assert check(load(name="exp_instruction_page_fresh"), tmp_path)  # 有的检查要换掉里面的函数，各用一份


@pytest.mark.parametrize("check, old, new", BROKEN, ids=lambda value: value.__name__ if callable(value) else "")
def test_broken_is_seen(check, old, new, tmp_path):
    """把那一处改坏，检查就不成立（或出错）：检查不是摆设。"""
    document, start, code = SCRIPT.read_text(encoding="utf-8").partition("\nimport argparse\n")  # 文档的「动手改」里也写着这些
    assert code.count(old) == 1, (code.count(old), old)
    path = tmp_path / "exp_instruction_page.py"
    path.write_text(document + start + code.replace(old, new), encoding="utf-8")
    try:
        assert not check(load(path, "broken"), tmp_path)
    except (RuntimeError, IndexError, ValueError, KeyError, AttributeError, TypeError, StopIteration):
        pass


# ---- 零碎 ----


def test_half_characters_wait(ns, writer):
    """一个汉字是三个词元：凑齐了才显示；到了上限还没凑齐，用替代字符。"""
    tokens = iter(writer.tokenizer.encode_ordinary("好啊"))
    fresh = load(name="exp_instruction_page_bytes")
    fresh.choose = lambda *_: (next(tokens), None)
    column, texts = fresh.new_column(writer.models[ns.BASE], [1, 2], (5, 0.0, 0, 1.0, 1)), []
    while not column.end:
        fresh.step(writer, column, (5, 0.0, 0, 1.0, 1))
        texts.append(column.text)
    assert texts == ["", "", "好", "好", "好�"] and column.end == "到了上限"


def test_bad_prompts_and_files(ns, writer, tmp_path):
    for text, said in (("  ", "先写"), ("x" * 600, "太长")):
        with pytest.raises(ValueError, match=said):
            ns.encode_prompt(writer, text, 10)
        assert said in [*ns.reply(writer, ns.Window(), text, (10, 0.0, 0, 1.0, 1))][-1][2]
    bad = {"half": b"PK\x03\x04", "text": "你好".encode()}
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="删掉它"):
            ns.adapter(tmp_path / name, None, {}, None)
    torch.save({"config": {}, "model": {"a": torch.tensor([math.nan])}}, tmp_path / "nan.pth")
    with pytest.raises(AttributeError):  # 有 nan 的不用，重新练
        ns.adapter(tmp_path / "nan.pth", None, {}, None)


def test_adapters_are_kept(ns, tmp_path, monkeypatch, capsys):
    """练过的直接读；哪一份的设置变了，只重练哪一份；三个模型各不相同。"""
    monkeypatch.setattr(ns, "OUTPUTS", tmp_path)
    ids = torch.tensor([[3, 4, 5]])
    logits = lambda: [model(ids) for model in ns.load_models(True).models.values()]  # noqa: E731
    first, made = logits(), capsys.readouterr().err
    assert made.count("练好了") == 2 and not torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2]) and not torch.equal(first[1], first[2])
    assert all(torch.equal(a, b) for a, b in zip(first, logits())) and "练好了" not in capsys.readouterr().err
    for name, file in ((ns.DPO, "dpo_quick.pth"), (ns.SFT, "sft_quick.pth")):
        monkeypatch.setitem(ns.TRAINING, name, ns.TRAINING[name] | {"seed": 2})
        again, made = logits(), capsys.readouterr().err
        assert made.count("练好了") == 1 and file in made and torch.equal(again[0], first[0])


def test_command_line(tmp_path):
    """没有 gradio：--quick 照样答、自查全对；要网页，一句中文说装什么，退出码 2。"""
    (tmp_path / "gradio.py").write_text("raise ImportError", encoding="utf-8")
    run = lambda *args: subprocess.run([sys.executable, SCRIPT, *args], capture_output=True, encoding="utf-8", env=os.environ | {"PYTHONUTF8": "1", "PYTHONPATH": str(tmp_path), "LLM_DATA_DIR": ""})  # noqa: E731
    result = run("--quick")
    assert result.returncode == 0 and result.stdout.count("✓") == 5 and "✗" not in result.stdout and "不下结论" in result.stdout
    for args, said in (([], "requirements-ui.txt"), (["--port", "0"], "端口")):
        result = run(*args)
        assert result.returncode == 2 and "Traceback" not in result.stderr and said in result.stderr.splitlines()[-1]


# 下面在真的浏览器里


@pytest.fixture(scope="module")
def site(ns, writer):
    """网页开在空闲的端口，浏览器一个；记下浏览器和服务器想连的每个地址；slow 让每个词元慢下来。"""
    for name in ("gradio", "playwright"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"没有装 {name}：pip install -r setup/requirements-ui.txt playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("没有 Chromium：apt-get install chromium")
    from playwright.sync_api import sync_playwright

    asked, lookup, choose = [], socket.getaddrinfo, ns.choose
    socket.getaddrinfo = lambda host, *rest, **more: asked.append(str(host)) or lookup(host, *rest, **more)
    ns.MAX_NEW_TOKENS, slow, gate = 24, {"seconds": 0.0, "tokens": None}, threading.Event()
    gate.set()

    def slowly(*settings):
        gate.wait(60)
        time.sleep(slow["seconds"])
        return (next(slow["tokens"]), None) if slow["tokens"] else choose(*settings)

    ns.choose = slowly
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = ns.build_page(writer)
    ns.launch(page, port, prevent_thread_lock=True, quiet=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])

        def open_window(width=1280):
            window = browser.new_context(viewport={"width": width, "height": 900}).new_page()
            window.set_default_timeout(30_000)
            window.on("request", lambda request: asked.append(request.url))
            window.on("pageerror", lambda error: asked.append(f"页面出错：{error}"))
            window.on("dialog", lambda dialog: (asked.append(f"弹窗：{dialog.message}"), dialog.dismiss()))
            window.route(lambda url: not url.startswith(f"http://127.0.0.1:{port}/"), lambda route: route.abort())
            window.goto(f"http://127.0.0.1:{port}/")
            window.wait_for_selector("#box textarea")
            return window

        yield SimpleNamespace(open=open_window, asked=asked, port=port, slow=slow, gate=gate)
        browser.close()
    page.close()
    socket.getaddrinfo, ns.choose = lookup, choose


def ask(window, text):
    window.fill("#box textarea", text)
    window.get_by_role("button", name="问", exact=True).click()


def clean(text):
    """去掉控制字符：随机的模型会写，有的浏览器不显示。"""
    return "".join(letter for letter in text if letter.isprintable())


def answers(window):
    """等三列都写完，返回三列的字。"""
    window.wait_for_function("document.querySelector('#status').innerText.includes('三列一共')")
    return [clean(window.locator(f"#cell{place} .answer").text_content()) for place in range(3)]


def expected(ns, writer, text, settings=(24, 0.0, 0, 0.9, 123)):
    return [clean(column.text) for column in columns_of(ns, writer, ns.encode_prompt(writer, text, 24), settings)]


@pytest.mark.parametrize("width", [1280, 390])
def test_page(ns, writer, site, width):
    """三列边写边显示，与直接算的相同；写的时候不插队；停；电脑上并排，手机上一列一列，不用左右滚。"""
    window = site.open(width)
    site.slow["seconds"] = 0.05
    ask(window, QUESTION)
    window.wait_for_selector("#cell2 .answer")
    early = window.locator("#cell2 .answer").text_content()
    window.wait_for_function("text => document.querySelector('#cell2 .answer').textContent.length > text.length", arg=early)  # 越写越长
    ask(window, "Second")
    window.wait_for_function("document.querySelector('#status').innerText.includes('先按「停」')")
    window.get_by_role("button", name="停").click()
    stopped = answers(window)
    site.slow["seconds"] = 0
    whole = expected(ns, writer, QUESTION)
    assert "停了" in window.locator("#status").text_content() and all(text.startswith(short[:-1]) and len(short) < len(text) for short, text in zip(stopped, whole))
    ask(window, QUESTION)
    window.wait_for_function("document.querySelector('#cell0 .note').innerText.includes('到了上限')")
    assert answers(window) == whole and window.locator("#past .asked").text_content() == QUESTION
    boxes = [window.locator(f"#cell{place}").bounding_box() for place in range(3)]
    side_by_side = boxes[0]["x"] < boxes[1]["x"] < boxes[2]["x"] and boxes[0]["y"] == boxes[2]["y"]
    stacked = boxes[0]["y"] < boxes[1]["y"] < boxes[2]["y"] and boxes[0]["x"] == boxes[2]["x"]
    sizes = window.evaluate("[...document.querySelectorAll('.answer, .note, textarea, button, label')].map(e => parseFloat(getComputedStyle(e).fontSize))")
    assert (side_by_side if width > 1000 else stacked) and min(sizes) >= 12
    assert window.evaluate("Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)") <= width
    window.context.close()


def test_sampling_settings_reach_the_model(ns, writer, site):
    """网页上的温度、种子真的用上了：与直接算的相同；种子一样就一样，换了就不同。"""
    found = []
    for seed in (5, 5, 6):
        window = site.open()
        window.locator("#temperature input[type=number]").fill("1.5")
        window.locator("#seed input").fill(str(seed))
        window.locator("#seed input").press("Tab")
        ask(window, QUESTION)
        found.append(answers(window))
        window.context.close()
    assert found[0] == found[1] != found[2] and found == [expected(ns, writer, QUESTION, (24, 1.5, 0, 0.9, seed)) for seed in (5, 5, 6)]


def test_two_windows(ns, writer, site):
    """两个窗口一起写，各答各的；一个按停，另一个照写。"""
    one, two = site.open(), site.open()
    site.gate.clear()  # 两边都收下了，才开始写
    ask(one, "Every effort")
    ask(two, "He said that")
    for window in (one, two):
        window.wait_for_selector("#past .asked", state="attached")
    one.get_by_role("button", name="停").click()
    one.wait_for_timeout(500)
    site.gate.set()
    stopped, whole = answers(one), answers(two)
    assert "停了" in one.locator("#status").text_content() and all(len(text) <= 2 for text in stopped)
    assert whole == expected(ns, writer, "He said that") and one.locator("#past .asked").text_content() == "Every effort"
    for window in (one, two):
        window.context.close()


def test_hostile_text_and_nothing_leaves_loopback(ns, writer, site):
    """人写的、模型写的 HTML 都只是字；浏览器和服务器没有连过别处。"""
    window = site.open()
    each = writer.tokenizer.encode_ordinary(EVIL)[:24]
    site.slow["tokens"] = iter([token for token in each for _ in range(3)])  # 三列轮流写同样的
    ask(window, EVIL)
    found = answers(window)
    site.slow["tokens"] = None
    assert found == [EVIL.encode()[:24].decode()] * 3 and window.locator("#past .asked").text_content() == EVIL
    assert window.evaluate("window.hacked === undefined && !document.querySelector('#past img, #past script, #cell0 img, #cell0 script')")
    ask(window, " ")
    window.wait_for_function("document.querySelector('#status').innerText.includes('先写一句话')")
    local = (f"http://127.0.0.1:{site.port}/", "data:", "blob:", "127.0.0.1", "localhost", "0.0.0.0")
    assert len(site.asked) > 20 and [address for address in site.asked if not address.startswith(local)] == []
    window.context.close()
