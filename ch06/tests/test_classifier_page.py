"""exp_classifier_page：颜色就是真的删掉它的分数；点两下还原；网页在真的浏览器里写、点、窄屏，短信里的 HTML 只是字，什么也不往外连。

运行：python -m pytest ch06/tests/test_classifier_page.py
浏览器的部分要 gradio、playwright 和 Chromium，没有就跳过。
"""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiktoken
import torch

SCRIPT = Path(__file__).resolve().parent.parent / "experiments" / "exp_classifier_page.py"
EVIL = '<img src=x onerror="window.hacked = 1"><script>window.hacked = 1</script>'


@pytest.fixture(scope="module")
def ns():
    spec = importlib.util.spec_from_file_location("exp_classifier_page", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reader(ns):
    """一个字节一个词元，随机的小模型，随便一个分类器。"""
    torch.manual_seed(0)
    cfg = {"vocab_size": 256, "context_length": 256, "emb_dim": 16, "n_heads": 4, "n_layers": 2, "hidden_dim": 24, "n_kv_groups": 2, "rope_base": 10_000, "rope_freq": None, "norm_eps": 1e-5}
    model = ns.LlamaModel(cfg).eval().requires_grad_(False)
    model.final_norm = model.out_head = torch.nn.Identity()
    tokenizer = tiktoken.Encoding("bytes", pat_str=r"[\s\S]", mergeable_ranks={bytes([i]): i for i in range(256)}, special_tokens={})
    x = torch.randn(30, 16)
    return SimpleNamespace(name="tiny", model=model, tokenizer=tokenizer, limit=256, path="x", right=0.5, probe=ns.Probe(x, x[:, 0].sign()))


def alone(reader, ids):
    return reader.probe(reader.model(torch.tensor([ids]))[0].mean(dim=0)).item()


def test_colours_are_real_removals(ns, reader):
    """每个词元的数，就是真的去掉它、从头再算，分数掉了多少；删过的再删，也对。"""
    ids = list(b"win a prize")
    for removed in (frozenset(), frozenset({0, 4}), frozenset(range(1, 10))):
        score, drops = ns.judge(reader, ids, removed)
        left = [i for i in range(len(ids)) if i not in removed]
        assert score == pytest.approx(alone(reader, [ids[i] for i in left]), abs=1e-5)
        for i in range(len(ids)):
            assert drops[i] is None if i in removed else drops[i] == pytest.approx(score - alone(reader, [ids[j] for j in left if j != i]), abs=1e-5)
    assert ns.judge(reader, ids, frozenset(range(1, 11)))[1][0] == 0.0  # 只剩一个
    assert ns.judge(reader, ids, frozenset(range(11))) == (0.0, [None] * 11)  # 一个也不剩


def test_clicks_and_colours(ns, reader):
    assert ns.toggle(frozenset(), 3) == {3} and ns.toggle(frozenset({3, 5}), 3) == {5}
    assert ns.painted(reader, list(b"abc"), [0.5, None, -1.0]) == [("a", 0.5), ("✕b", None), ("c", -1.0)]
    assert ns.painted(reader, list(b"ab"), [0.0, 0.0]) == [("a", 0.0), ("b", 0.0)] and ns.painted(reader, [], []) == []
    assert len(ns.encode(reader, "x" * 999)) == ns.LONGEST and "太长" in ns.verdict(0.1, [0.1], list(range(ns.LONGEST)))
    assert "正常" in ns.verdict(-0.1, [None, 0.1], [1, 2]) and "已删掉 1 个" in ns.verdict(-0.1, [None, 0.1], [1, 2]) and "先写" in ns.verdict(1, [], [])


def test_command_line(tmp_path):
    """没有 gradio：--quick 照样判、自查全对；要网页，一句中文说装什么，退出码 2。"""
    (tmp_path / "gradio.py").write_text("raise ImportError", encoding="utf-8")
    run = lambda *args: subprocess.run([sys.executable, SCRIPT, *args], capture_output=True, encoding="utf-8", env=os.environ | {"PYTHONUTF8": "1", "PYTHONPATH": str(tmp_path), "LLM_DATA_DIR": ""})  # noqa: E731
    result = run("--quick")
    assert result.returncode == 0 and result.stdout.count("✓") == 3 and "✗" not in result.stdout
    for args, said in (([], "requirements-ui.txt"), (["--port", "0"], "端口")):
        result = run(*args)
        assert result.returncode == 2 and "Traceback" not in result.stderr and said in result.stderr.splitlines()[-1]


# 下面在真的浏览器里


@pytest.fixture(scope="module")
def site(ns, reader):
    for name in ("gradio", "playwright"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"没有装 {name}：pip install -r setup/requirements-ui.txt playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("没有 Chromium：apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page, asked = ns.build_page(reader), []
    ns.launch(page, port, prevent_thread_lock=True, quiet=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])

        def open_window(width):
            window = browser.new_context(viewport={"width": width, "height": 800}).new_page()
            window.set_default_timeout(60_000)
            window.on("request", lambda request: asked.append(request.url))
            window.on("pageerror", lambda error: asked.append(f"页面出错：{error}"))
            window.route(lambda url: not url.startswith(f"http://127.0.0.1:{port}/"), lambda route: route.abort())
            window.goto(f"http://127.0.0.1:{port}/")
            window.wait_for_selector("#box textarea")
            return window

        yield SimpleNamespace(open=open_window, asked=asked, port=port)
        browser.close()
    page.close()


def said(window, score):
    window.wait_for_function("score => document.querySelector('#verdict').innerText.includes(score)", arg=f"{score:+.2f}")


@pytest.mark.parametrize("width", [1280, 390])
def test_page(ns, reader, site, width):
    """写一条，看分数和颜色；点一个词元，删掉它，分数跟着变；再点，还原；另一个窗口不受影响；窄屏不用左右滚。"""
    one, two = site.open(width), site.open(width)
    ids = list(b"win now")
    first, drops = ns.judge(reader, ids, frozenset())
    one.fill("#box textarea", "win now")
    one.get_by_role("button", name="看").click()
    said(one, first)
    two.fill("#box textarea", "hello")
    two.get_by_role("button", name="看").click()
    said(two, ns.judge(reader, list(b"hello"), frozenset())[0])
    worst = max(range(len(ids)), key=lambda i: abs(drops[i]))
    token = one.locator("#words .token").nth(worst)
    token.click()
    said(one, first - drops[worst])
    assert "已删掉 1 个" in one.locator("#verdict").inner_text() and "✕" in one.locator("#words").inner_text()
    one.locator("#words .token").nth(worst).click()
    said(one, first)
    assert "✕" not in two.locator("#words").inner_text()
    assert one.evaluate("Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)") <= width


def test_hostile_text_and_nothing_leaves_loopback(site):
    window = site.open(1280)
    window.fill("#box textarea", EVIL)
    window.get_by_role("button", name="看").click()
    window.wait_for_function("document.querySelectorAll('#words .token').length > 20")
    assert window.evaluate("window.hacked === undefined && !document.querySelector('#words img, #words script')")
    window.fill("#box textarea", "")
    window.get_by_role("button", name="看").click()
    window.wait_for_function("document.querySelector('#verdict').innerText.includes('先写一条')")
    local = (f"http://127.0.0.1:{site.port}/", "data:", "blob:")
    assert len(site.asked) > 20 and [address for address in site.asked if not address.startswith(local)] == []
