"""exp_chat_page：函数与独立的实现相同，话里的 HTML 只是字，两个窗口不串；真的网页在无头 Chromium 里用一遍。

运行：python -m pytest ch05/tests/test_chat_page.py
网页的几个测试要 gradio（setup/requirements-ui.txt）、playwright 和 Chromium（Debian、Ubuntu：apt-get install chromium），没有就跳过。
"""

import gc
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "ch05" / "experiments" / "exp_chat_page.py"
TINY = {"vocab_size": 50257, "context_length": 64, "emb_dim": 32, "n_heads": 2, "n_layers": 2, "drop_rate": 0.0, "qkv_bias": True}
GREEDY = (0.0, 0, 1.0)
EVIL = "<script>alert(1)</script><img src=x onerror=\"window.hacked=1\"> ' \" & ${window.hacked=1} {{value}} </div></span>"


@pytest.fixture(scope="module")
def ns():
    spec = importlib.util.spec_from_file_location("exp_chat_page", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference():
    """书的作者的 GPT，随机的权重放大了几倍：不放大，各个词元的概率几乎一样大。"""
    from llms_from_scratch.ch04 import GPTModel

    torch.manual_seed(123)
    model = GPTModel(TINY).eval()
    with torch.no_grad():
        model.out_head.weight *= 8
    return model


@pytest.fixture(scope="module")
def talker(ns, reference, tmp_path_factory):
    path = tmp_path_factory.mktemp("chat") / "tiny.pth"
    torch.save({"config": TINY, "model": reference.state_dict()}, path)  # 里面有 mask，读的时候要认得
    return ns.load(path)


def user(text):
    return {"role": "user", "content": text}


def ask(ns, talker, window, messages, settings=(12, *GREEDY)):
    """一直读到写完，返回连同回答的对话。"""
    *_, last = ns.reply(talker, window, messages, settings)
    return json.loads(last["saved"])


def test_probabilities_like_reference(ns, reference, talker):
    """贪心写的词元、它的概率、没有选上的几个，都与书的作者的 GPT 每一步从头算的相同；提示词分段送，也相同。"""
    ids = talker.tokenizer.encode("Every effort moves you, he said, and then again") * 2
    ns.CHUNK, old = 7, ns.CHUNK
    *_, pieces = ns.stream_pieces(talker, ns.Window(talker), ids, 12, *GREEDY)
    ns.CHUNK = old
    tokens = [token for _, tokens in pieces for token in tokens]
    assert len(tokens) == 12
    for name, p, others in tokens:
        with torch.no_grad():
            probs = reference(torch.tensor([ids]))[0, -1].softmax(dim=-1)
        values, order = probs.topk(ns.RUNNERS + 1)
        assert [name, *(other for other, _ in others)] == [ns.spell(talker.tokenizer, i) for i in order.tolist()]
        assert torch.allclose(torch.tensor([p, *(q for _, q in others)]), values, atol=1e-5)
        ids.append(order[0].item())


def test_sampled_token_is_not_among_the_others(ns, talker):
    """采样时选中的可以不是第一名：没有选上的里面没有它，显示的是温度为 1 的概率。"""
    torch.manual_seed(123)
    *_, pieces = ns.stream_pieces(talker, ns.Window(talker), [1, 2, 3], 30, 2.0, 0, 1.0)
    tokens = [token for _, tokens in pieces for token in tokens]
    assert any(p < others[0][1] for _, p, others in tokens)
    assert all(len(others) == ns.RUNNERS and others == sorted(others, key=lambda pair: -pair[1]) for _, _, others in tokens)
    assert all(p + sum(q for _, q in others) <= 1.0001 and name not in [other for other, _ in others] for name, p, others in tokens)


@pytest.mark.parametrize("temperature,top_k,top_p", [(1.0, 0, 1.0), (0.5, 0, 0.9), (1.7, 20, 1.0), (0.8, 10, 0.6), (1.0, 1, 0.05), (1e-6, 0, 0.9)])
def test_choose_like_transformers(ns, monkeypatch, temperature, top_k, top_p):
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    torch.manual_seed(123)
    logits, seen = torch.randn(1000) * 3, []
    monkeypatch.setattr(torch, "multinomial", lambda weights, n: seen.append(weights / weights.sum()) or torch.tensor([0]))
    token, probs = ns.choose(logits, temperature, top_k, top_p)
    theirs = TemperatureLogitsWarper(temperature)(None, logits[None])
    for warper in ([TopKLogitsWarper(top_k)] if top_k else []) + [TopPLogitsWarper(top_p)]:
        theirs = warper(None, theirs)
    theirs = theirs.softmax(dim=-1)[0].sort(descending=True).values
    assert (seen[0] > 0).sum() == (theirs > 0).sum() and torch.allclose(seen[0], theirs, atol=1e-5)
    assert token == logits.argmax() and torch.allclose(probs, logits.softmax(dim=-1), atol=1e-6)


def test_half_characters(ns, talker):
    """一个字分在几个词元里：齐了才显示，几个词元都记在这一片里；停在一半，写成 �。"""
    written = talker.tokenizer.encode("饕餮 🙂a<b")

    class Parrot:
        cfg = talker.model.cfg

        def __call__(self, part, cache, last_only):
            cache.length += part.shape[1]
            return torch.nn.functional.one_hot(torch.tensor([[written[cache.length - 1]]]), TINY["vocab_size"]) * 50.0

    parrot = SimpleNamespace(**vars(talker) | {"model": Parrot()})
    seen = ["".join(text for text, _ in pieces) for pieces in ns.stream_pieces(parrot, ns.Window(talker), [0], len(written), *GREEDY)]
    assert seen[-1] == "饕餮 🙂a<b" and "�" not in "".join(seen) and len(seen) == len(written) + 1
    *_, pieces = ns.stream_pieces(parrot, ns.Window(talker), [0], len(written), *GREEDY)
    assert sum(len(tokens) for _, tokens in pieces) == len(written) and pieces[0][0] == "饕" and len(pieces[0][1]) == 3
    *_, pieces = ns.stream_pieces(parrot, ns.Window(talker), [0], 2, *GREEDY)
    assert [text for text, _ in pieces] == ["�"] and len(pieces[0][1]) == 2


class Reader(HTMLParser):
    """读出 HTML 里的标签、属性和字。"""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), ""
        self.tips = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        self.tips += [value for name, value in attributes if name == "data-tip"]

    def handle_data(self, data):
        self.text += data


def test_html_is_only_text(ns):
    """谁的话里写着 HTML，读回来都一字不差，除了 div 和 span 没有别的标签；data-tip 里也是。"""
    page = Reader(ns.render([user(EVIL), {"role": "assistant", "pieces": [[EVIL, [[EVIL, 0.25, [[EVIL, 0.5]]]]]]}]))
    assert page.tags == {"div", "span"} and page.attributes == {"class", "style", "data-tip"}
    assert page.text == EVIL * 2 and page.tips[0].count(EVIL) == 2 and "25.0%" in page.tips[0] and "50.0%" in page.tips[0]
    for text in ["", "[", "3", "null", '{"a": 1}', '[{"role": "user"}]', '[{"role": "assistant", "pieces": [["a", [["b", "c", []]]]]}]', "[1]"]:
        assert ns.read_saved(text) == []


def test_windows_do_not_mix(ns, talker):
    """两个窗口轮流写、各问两句，与分开问的相同；一个窗口里正在写，第二个请求不插进来。"""
    alone = [ask(ns, talker, ns.Window(talker), [user(text)]) for text in ("Every effort", "He said that")]
    windows = [ns.Window(talker), ns.Window(talker)]
    running = [ns.stream_pieces(talker, window, ns.encode(talker, [user(text)], 12)[0], 12, *GREEDY) for window, text in zip(windows, ("Every effort", "He said that"))]
    for pair in zip(*running):
        pass
    assert [pieces for pieces in pair] == [messages[-1]["pieces"] for messages in alone] and pair[0] != pair[1]

    second = [ask(ns, talker, window, [*messages, user("Again")]) for window, messages in zip(windows, alone)]
    fresh = [ask(ns, talker, ns.Window(talker), [*messages, user("Again")]) for messages in alone]
    assert [messages[-1]["content"] for messages in second] == [messages[-1]["content"] for messages in fresh]

    first = ns.reply(talker, windows[0], [user("One")], (12, *GREEDY))
    next(first)
    assert list(ns.reply(talker, windows[0], [user("Two")], (12, *GREEDY))) == [{"status": ns.BUSY}]
    first.close()  # 浏览器关了
    assert len(ask(ns, talker, windows[0], [user("Three")])) == 2


def test_stop_and_long_text(ns, talker):
    window = ns.Window(talker)
    stream = ns.stream_pieces(talker, window, [1, 2, 3], 500, *GREEDY)
    next(stream)
    window.stop = True
    assert len(list(stream)) == 1
    # 写满了，忘掉一半接着写；正好写了要的那么多，缓存没有越界。
    *_, pieces = ns.stream_pieces(talker, ns.Window(talker), [1, 2, 3], 200, *GREEDY)
    assert sum(len(tokens) for _, tokens in pieces) == 200
    instruct = SimpleNamespace(**vars(talker) | {"kind": "instruct"})
    assert "太长" in list(ns.reply(instruct, window, [user("word " * 80)], (5, *GREEDY)))[-1]["status"]
    assert "只看最后 32 个词元" in list(ns.reply(talker, window, [user("word " * 80)], (5, *GREEDY)))[-1]["status"]


def test_stop_right_after_accept(ns, talker):
    """收下了、还没有开始写，就按停：一个词元也不写；再收下一句，才不算数。正在写的时候不收，停还是停。"""
    window = ns.Window(talker)
    assert window.accept()
    window.stop = True
    *_, last = ns.reply(talker, window, [user("One")], (12, *GREEDY))
    assert last["status"].startswith("0 个词元") and "停了" in last["status"] and json.loads(last["saved"])[-1]["pieces"] == []
    assert window.accept()
    writing = ns.reply(talker, window, [user("Two")], (12, *GREEDY))
    next(writing)
    window.stop = True
    assert not window.accept() and window.stop
    for changes in writing:
        if "saved" in changes:
            assert window.accept()  # 浏览器看到写完的时候，锁已经放开了
    assert len(ask(ns, talker, window, [user("Three")])) == 2 and not window.lock.locked()


def test_formats(ns, reference, talker, tmp_path):
    """文件名带 sft 的用第 7 章的格式；SmolLM2 的对话放不下时，从最早的一问一答丢起，第一句总是系统的话。"""
    torch.save({"config": TINY, "model": reference.state_dict()}, tmp_path / "a-sft.pth")
    sft = ns.load(tmp_path / "a-sft.pth")
    assert (talker.kind, sft.kind) == ("text", "instruct")
    ids, _ = ns.encode(SimpleNamespace(**vars(sft) | {"limit": 999}), [user("old"), {"role": "assistant", "content": "x"}, user("<|endoftext|>new")], 5)
    prompt = sft.tokenizer.decode(ids)
    assert prompt.endswith("### Instruction:\n<|endoftext|>new\n\n### Response:\n") and "old" not in prompt and 50256 not in ids
    assert sft.tokenizer.decode(ns.encode(talker, [user("A"), {"role": "assistant", "content": " b"}, user("C")], 5)[0]) == "A b\nC"

    tokenizer = ns.tiktoken.Encoding("bytes", pat_str=r".|\n", mergeable_ranks={bytes([i]): i for i in range(256)}, special_tokens={"<|im_start|>": 256, "<|im_end|>": 257})
    chat = SimpleNamespace(kind="chat", tokenizer=tokenizer, limit=400)
    messages = [message for i in range(9) for message in (user(f"question {i}"), {"role": "assistant", "content": f"answer {i}"})] + [user("last")]
    ids, note = ns.encode(chat, messages, 50)
    text = tokenizer.decode(ids)
    kept = re.findall(r"question (\d)", text)
    assert text.startswith("<|im_start|>system\n") and text.endswith("last<|im_end|>\n<|im_start|>assistant\n") and len(ids) + 50 <= 400
    assert kept == [str(i) for i in range(9 - len(kept), 9)] and 0 < len(kept) < 9 and f"最早的 {2 * (9 - len(kept))} 句" in note


def test_bad_files(ns, reference, tmp_path):
    """读不了的检查点，一句中文说清楚。"""
    state = reference.state_dict()
    contents = {"坏": [1], "缺": {"config": TINY}, "类": {"config": TINY, "model": state | {"out_head.weight": torch.zeros(2, 32)}}, "nan": {"config": TINY, "model": state | {"final_norm.scale": torch.full((32,), torch.nan)}}}
    for name, content in contents.items():
        torch.save(content, tmp_path / f"{name}.pth")
    (tmp_path / "text.pth").write_text("你好", encoding="utf-8")
    for name, sentence in {"没有": "没有这个文件", "text": "读不出来", "坏": "读不出来", "缺": "读不出来", "类": "只分 2 类", "nan": "final_norm.scale 有 nan"}.items():
        with pytest.raises(ValueError, match=sentence):
            ns.load(tmp_path / f"{name}.pth")


def test_command_line(talker, tmp_path, reference):
    """没有 gradio：--quick 照样答、自查全对；要网页，一句中文说装什么，退出码 2。"""
    (tmp_path / "gradio.py").write_text("raise ImportError", encoding="utf-8")
    torch.save({"config": TINY, "model": reference.state_dict()}, tmp_path / "tiny.pth")
    run = lambda *args: subprocess.run([sys.executable, SCRIPT, "--model", tmp_path / "tiny.pth", *args], capture_output=True, encoding="utf-8", env=os.environ | {"PYTHONUTF8": "1", "PYTHONPATH": str(tmp_path)})  # noqa: E731
    result = run("--quick")
    assert result.returncode == 0 and result.stdout.count("✓") == 4 and "✗" not in result.stdout
    result = run()
    assert result.returncode == 2 and "Traceback" not in result.stderr and "pip install -r setup/requirements-ui.txt" in result.stderr.splitlines()[-1]


# 下面在真的浏览器里


@pytest.fixture(scope="module")
def site(ns, talker):
    """网页开在空闲的端口，浏览器一个；记下浏览器和服务器想连的每个地址。"""
    for name in ("gradio", "playwright"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"没有装 {name}：pip install -r setup/requirements-ui.txt playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("没有 Chromium：apt-get install chromium")
    from playwright.sync_api import sync_playwright

    asked, lookup = [], socket.getaddrinfo
    socket.getaddrinfo = lambda host, *rest, **more: asked.append(str(host)) or lookup(host, *rest, **more)
    ns.TEMPERATURE, ns.MAX_NEW_TOKENS, choose = 0, 32, ns.choose
    slow, gate = {"seconds": 0.0}, threading.Event()
    gate.set()
    ns.choose = lambda *settings: gate.wait(60) and time.sleep(slow["seconds"]) or choose(*settings)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = ns.build_page(talker)
    ns.launch(page, port, prevent_thread_lock=True, quiet=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])

        def open_window(context):
            window = context.new_page()
            window.set_default_timeout(60_000)
            window.on("request", lambda request: asked.append(request.url))
            window.on("pageerror", lambda error: asked.append(f"页面出错：{error}"))
            window.on("dialog", lambda dialog: (asked.append(f"弹窗：{dialog.message}"), dialog.dismiss()))
            window.route(lambda url: not url.startswith(f"http://127.0.0.1:{port}/"), lambda route: route.abort())
            window.goto(f"http://127.0.0.1:{port}/")
            window.wait_for_selector("#box textarea")
            return window

        yield SimpleNamespace(port=port, browser=browser, open=open_window, asked=asked, slow=slow, gate=gate)
        browser.close()
    page.close()
    socket.getaddrinfo, ns.choose = lookup, choose


def say(window, text):
    window.fill("#box textarea", text)
    window.get_by_role("button", name="发送").click()


def answer(window):
    """等它写完（状态里有几秒），返回最后一个回答的字。"""
    window.wait_for_function("document.querySelector('#status').innerText.includes('秒')")
    return window.locator(".turn.model").last.text_content()


def expected(ns, talker, *texts):
    messages = []
    for text in texts:
        messages = ask(ns, talker, ns.Window(talker), [*messages, user(text)], (ns.MAX_NEW_TOKENS, *GREEDY))
    return [message["content"] for message in messages if message["role"] == "assistant"]


@pytest.mark.parametrize("width", [1280, 390])
def test_page(ns, talker, site, width):
    """发送、边写边显示、停、重答、清空；窄屏不用左右滚，字够大；指着词元看得到概率。"""
    site.slow["seconds"] = 0.1
    context = site.browser.new_context(viewport={"width": width, "height": 800}, has_touch=width < 500)
    window = site.open(context)
    say(window, "Every effort moves")
    window.wait_for_selector(".piece")
    early = window.locator(".turn.model").last.text_content()
    window.wait_for_function("text => document.querySelector('.turn.model').textContent.length > text.length", arg=early)  # 越写越长
    say(window, "Second")  # 正在写：不插队，打的字还在
    window.wait_for_function("document.querySelector('#status').innerText.includes('先按「停」')")
    window.get_by_role("button", name="停").click()
    stopped = answer(window)
    whole = expected(ns, talker, "Every effort moves")[0]
    assert "停了" in window.locator("#status").text_content() and 0 < len(stopped) < len(whole) and whole.startswith(stopped)
    assert window.input_value("#box textarea") == "Second"

    site.slow["seconds"] = 0
    window.get_by_role("button", name="重答").click()
    window.wait_for_function("text => document.querySelector('.turn.model')?.textContent === text && document.querySelectorAll('.turn').length === 2", arg=whole)
    assert answer(window) == whole

    piece = window.locator(".piece").nth(3)
    piece.tap() if width < 500 else piece.hover()
    tip = window.locator("#tip")
    assert tip.is_visible() and tip.text_content() == piece.get_attribute("data-tip") and tip.text_content().count("没选") == ns.RUNNERS
    box, sizes = tip.bounding_box(), window.evaluate("[...document.querySelectorAll('.turn, textarea, button, label, #tip')].map(e => parseFloat(getComputedStyle(e).fontSize))")
    assert box["x"] >= 0 and box["x"] + box["width"] <= width and min(sizes) >= 12
    assert window.evaluate("Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)") <= width

    site.slow["seconds"] = 0.1
    say(window, "word " * 80 + "stop")
    window.wait_for_function("document.querySelectorAll('.turn').length === 4 && document.querySelector('.waiting') === null")
    low = window.evaluate("document.querySelector('#talk').getBoundingClientRect().bottom - [...document.querySelectorAll('.turn')].at(-1).getBoundingClientRect().bottom")
    assert 0 <= low < 60  # 新写的字总看得见，不用自己往下滚
    window.get_by_role("button", name="清空").click()  # 写到一半
    window.wait_for_function("document.querySelectorAll('.turn').length === 0 && sessionStorage.getItem('chat') === ''")
    time.sleep(1)  # 正在写的那一个这时也停了，没有把话写回来
    window.get_by_role("button", name="重答").click()
    window.wait_for_function("document.querySelector('#status').innerText.includes('还没有问过')")
    assert window.locator(".turn").count() == 0
    context.close()


@pytest.mark.parametrize("button,calls", [("发送", 1), ("重答", 2)])
def test_stop_before_it_starts(ns, site, monkeypatch, button, calls):
    """服务器收下了、还没有开始写，就按停：停不会丢。"""
    context = site.browser.new_context()
    window = site.open(context)
    if button == "重答":
        say(window, "Every effort moves")
        answer(window)
    read, asked, go_on = ns.read_saved, [], threading.Event()

    def slow(text):
        asked.append(text)
        if len(asked) == calls:
            go_on.wait(30)
        return read(text)

    monkeypatch.setattr(ns, "read_saved", slow)  # 停在收下之后、开始写之前
    if button == "发送":
        window.fill("#box textarea", "Every effort moves")
    window.get_by_role("button", name=button).click()
    while len(asked) < calls:
        window.wait_for_timeout(50)
    window.get_by_role("button", name="停").click()
    window.wait_for_timeout(1000)
    go_on.set()
    window.wait_for_function("document.querySelector('#status').innerText.includes('停了')")
    assert window.locator("#status").text_content().strip().startswith("0 个词元") and window.locator(".turn").count() == 2 and window.locator(".piece").count() == 0
    context.close()


def test_two_windows(ns, talker, site):
    """同一个浏览器的两个窗口一起写，各答各的；接着问、刷新，也不串；关了窗口，服务器不再记着它。"""
    context = site.browser.new_context()
    one, two = site.open(context), site.open(context)
    site.gate.clear()  # 两边都收下了，才开始写
    say(one, "Every effort")
    say(two, "He said that")
    one.wait_for_selector(".waiting")
    two.wait_for_selector(".waiting")
    site.gate.set()
    answers = [answer(one), answer(two)]
    assert answers == [expected(ns, talker, "Every effort")[0], expected(ns, talker, "He said that")[0]] and answers[0] != answers[1]
    two.reload()
    two.wait_for_selector(".piece")
    assert two.locator(".turn").all_text_contents() == ["He said that", answers[1]]
    for window, first in ((two, "He said that"), (one, "Every effort")):
        say(window, "Again")
        window.wait_for_function("document.querySelectorAll('.turn').length === 4")
        assert answer(window) and window.locator(".turn.model").all_text_contents() == expected(ns, talker, first, "Again")
    alive = lambda: sum(type(thing) is ns.Window for thing in gc.get_objects())  # noqa: E731
    before = alive()
    context.close()
    for _ in range(60):  # gradio 隔十几秒才看一次窗口还在不在
        if alive() <= before - 2:
            return
        time.sleep(1)
    raise AssertionError(f"关了两个窗口，还有 {alive()} 个")


def test_hostile_page(site):
    """HTML、模板的花括号，人写的、浏览器里存的，都只是字；存坏了的对话，从头开始。"""
    context = site.browser.new_context()
    window = site.open(context)
    say(window, EVIL)
    answer(window)
    assert window.locator(".turn.user").text_content() == EVIL
    pieces = [[EVIL, [[EVIL, 0.5, [[EVIL, 0.1]]]]]]
    window.evaluate("text => sessionStorage.setItem('chat', text)", json.dumps([user(EVIL), {"role": "assistant", "content": EVIL, "pieces": pieces}]))
    window.reload()
    window.wait_for_selector(".piece")
    assert window.locator(".turn").all_text_contents() == [EVIL, EVIL]
    window.hover(".piece")
    assert EVIL in window.locator("#tip").text_content()
    assert window.evaluate("window.hacked === undefined && !document.querySelector('.turn img, .turn script, #tip img')")
    window.evaluate("sessionStorage.setItem('chat', '[{]')")
    window.reload()
    window.wait_for_selector("#box textarea")
    say(window, "Hello")
    answer(window)
    assert window.locator(".turn.user").all_text_contents() == ["Hello"]
    context.close()


def test_nothing_leaves_loopback(ns, site):
    """浏览器和服务器都没有想过连别的地址，没有弹窗，也没有出错；别的地址连不上来；端口被占用时说清楚。"""
    assert len(site.asked) > 50
    local = (f"http://127.0.0.1:{site.port}/", "data:", "blob:", "127.0.0.1", "localhost")
    assert [address for address in site.asked if not address.startswith(local)] == []
    with socket.socket() as probe:  # 同一台机器的另一个回环地址：只听 127.0.0.1，就连不上
        assert probe.connect_ex(("127.0.0.2", site.port)) != 0
    with ns.import_gradio().Blocks() as other:
        pass
    with pytest.raises(ValueError, match=f"端口 {site.port} 打不开"):
        ns.launch(other, site.port)
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
