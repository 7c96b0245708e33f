"""测试 setup/read.py：拆得对不对，画出来的页面在真的浏览器里好不好用

运行：python -m pytest setup/tests/test_read.py
画页面要 setup/requirements-read.txt 里的包，浏览器的部分还要 playwright 和 Chromium（Debian、Ubuntu：apt-get install chromium），没有就跳过。
默认只画几页；READ_ALL=1 画整本书，每一页都在浏览器里打开一遍（几分钟）。
"""

import ast
import doctest
import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

SETUP = Path(__file__).resolve().parents[1]
ROOT = SETUP.parent
sys.path[:0] = [str(SETUP / "read_site"), str(SETUP)]
import extract
import prose
import record
import touch

CAUSAL = "ch03/main/example_03_causal_attention.py"
SCRIPTS = [CAUSAL, "ch03/main/multihead_attention.py", "ch03/experiments/exp_attention_heatmap.py", "ch04/main/example_06_gpt_model.py"]
MAIN = sorted([*ROOT.glob("ch0*/main/*.py"), *ROOT.glob("appendix-A/main/*.py")])


def need(*names):
    """少了哪个包就跳过。"""
    for name in names:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"没有装 {name}：python -m pip install -r setup/requirements-read.txt playwright")


# ---- 拆 ----


@pytest.mark.parametrize("module", [extract, prose, record, touch], ids=lambda module: module.__name__)
def test_doctests(module):
    """文档里的例子都对，而且真的有例子。"""
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize("path", MAIN, ids=lambda path: path.stem)
def test_every_line_once(path):
    """一行代码不多不少出现一次，一句注释也不丢。"""
    script = extract.read_script(path)
    rows = [row for section in script.sections for block in section.blocks for row in ([block] if block.kind == "row" else block.rows)]
    shown = [(number, code) for row in rows for number, code, *_ in row.code if code]
    in_docs = {number for start, (end, *_) in script.source.docs.items() for number in range(start, end + 1)}
    expected = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        column = script.source.comments.get(number, (None,))[0]
        code = line[:column].rstrip()
        if code and number not in in_docs:
            expected.append((number, code))
    assert shown == expected
    said = "".join(re.sub(r"\s", "", str([row.prose for row in rows]) + str([row.code for row in rows]) + str([section.title for section in script.sections])).split("\\n"))
    for number, (_, comment) in script.source.comments.items():
        text = re.sub(r"^#\s*(%%\s*)?(noqa\S*( [A-Z]\d+)?)?", "", comment)
        if not comment.startswith(("# region", "# endregion", "# fmt")):
            for word in re.findall(r"[\u4e00-\u9fff]{2,}", text):
                assert word in said, (number, word)


def test_fields_and_sections():
    """一个有代表性的脚本，拆出来的与它写的一样。"""
    script = extract.read_script(ROOT / CAUSAL)
    assert script.opening.place == "3.5" and script.opening.title == "因果注意力：不许偷看后面的词"
    assert script.opening.commands == [f"python {CAUSAL}"] and list(script.opening.letters) == ["b", "t", "d"]
    assert len(script.sections) == 1 + script.text.count("\n# %%")
    regions = [block for section in script.sections for block in section.blocks if block.kind == "region"]
    assert [(region.how, region.names) for region in regions] == [("沿用", ["confirm"]), ("沿用", ["SelfAttention_v2"])]
    assert regions[1].homes == {"SelfAttention_v2": "ch03/main/example_02_trainable_attention.py"}
    docs = [value for section in script.sections for row in section.blocks if row.kind == "row" for kind, value in row.prose if kind == "doc"]
    tree = ast.parse(script.text)
    causal = next(node for node in tree.body if getattr(node, "name", "") == "CausalAttention")
    arguments = [each.arg for each in causal.body[1].args.args][1:]
    assert [name for name, *_ in docs[0].fields["参数"]] == arguments
    assert docs[0].source == "原书 3.5.3 节" and "输入 (b, t, d_in)" in docs[0].shape[0]


def test_changed_region():
    """改写区：标出来的恰好是有「改：」的那几行，一行原处的也没有丢。"""
    script = extract.read_script(ROOT / SCRIPTS[2])
    region = next(block for section in script.sections for block in section.blocks if block.kind == "region" and block.how == "改写")
    explained = {number for number, (_, comment) in script.source.comments.items() if "改：" in comment and region.line < number < region.line + 60}
    assert region.added == explained and region.gone == {}


# ---- 录 ----


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """把一个脚本重录一遍，记录写到别处。"""
    folder, kept = tmp_path_factory.mktemp("records"), record.RECORDS
    project = record.make_project(tmp_path_factory.mktemp("project"))
    record.RECORDS = folder
    try:
        return record.run(CAUSAL, project)
    finally:
        record.RECORDS = kept


def test_fresh_run_is_the_record(fresh):
    """重跑一遍，输出、形状与仓库里的记录相同（版本相同时）。"""
    kept = record.load(CAUSAL, (ROOT / CAUSAL).read_text(encoding="utf-8"))
    if kept.state != "fresh" or kept.torch != fresh["torch"]:
        pytest.skip(f"没有这一版的记录（{kept.state}）：python setup/read.py --run {CAUSAL}")
    assert kept.cells == fresh["cells"] and kept.shapes == fresh["shapes"]


def test_record_equals_plain_run(fresh):
    """加了记号的脚本，印出来的与直接运行一个字不差；记下的形状就是张量的形状。"""
    code = f"import runpy, json; g = runpy.run_path({str(ROOT / CAUSAL)!r}, run_name='__main__')\nprint('\\x1d' + json.dumps({{n: list(v.shape) for n, v in g.items() if hasattr(v, 'dtype') and hasattr(v, 'shape')}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", env=os.environ | {"PYTHONUTF8": "1", "OMP_NUM_THREADS": "1", "LLM_DATA_DIR": ""}, check=True)
    printed, _, shapes = done.stdout.partition("\x1d")
    recorded = "".join(part[1] for parts in fresh["cells"].values() for part in parts if part[0] == "text")
    assert recorded.strip("\n") == printed.strip("\n")
    tree = ast.parse((ROOT / CAUSAL).read_text(encoding="utf-8"))
    inside = {line for node in ast.walk(tree) if isinstance(node, (ast.ClassDef, ast.FunctionDef)) for line in range(node.lineno, node.end_lineno + 1)}
    last = {}
    for key, entry in fresh["shapes"].items():
        line, name = key.split(":")
        if int(line) not in inside:
            last[name] = entry[0]
    real = json.loads(shapes)
    assert len(last) > 12 and all(real[name] == shape for name, shape in last.items())


def test_digest_moves():
    """改一个字、换一版 torch，摘要就变；重新量过的用时不算。"""
    text = (ROOT / CAUSAL).read_text(encoding="utf-8")
    same = record.digest(CAUSAL, text)
    assert record.digest(CAUSAL, text.replace("约 2 秒", "约 9 秒")) == same
    assert record.digest(CAUSAL, text.replace("seed(123)", "seed(124)")) != same
    assert record.digest(CAUSAL, text, "2.0.0") != same


def test_records_are_small():
    """记录一共不超过 8 MB，里面没有这台机器的路径。"""
    files = [path for path in record.RECORDS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8_000_000
    for path in files:
        if path.suffix == ".json":
            assert str(ROOT) not in path.read_text(encoding="utf-8") and "/tmp/" not in path.read_text(encoding="utf-8"), path


# ---- 画 ----


def load_read():
    """按路径导入 read.py。"""
    spec = importlib.util.spec_from_file_location("read", SETUP / "read.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["read"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """画好的网站。"""
    need("pygments", "markdown_it", "mdit_py_plugins", "jinja2")
    out = tmp_path_factory.mktemp("site") / "book"
    assert load_read().build(out, None if os.environ.get("READ_ALL") else SCRIPTS, jobs=1) == []
    return out


class Page(HTMLParser):
    """一页里的链接、锚点、要下载的东西。"""

    def __init__(self, path):
        super().__init__()
        self.links, self.ids, self.loads = [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        """收集一个标签。"""
        attrs = dict(attrs)
        if attrs.get("id"):
            self.ids.append(attrs["id"])
        if tag == "a":
            self.links.append(attrs.get("href", ""))
        elif "src" in attrs or (tag == "link" and "href" in attrs):
            self.loads.append(attrs.get("src") or attrs["href"])


def test_links_anchors_and_loads(site):
    """每个链接、每个锚点都在；要下载的都在文件夹里；一页之内锚点不重复；每页不超过 400 KB。"""
    pages = {path: Page(path) for path in site.rglob("*.html")}
    assert len(pages) >= len(SCRIPTS) + 12
    for path, page in pages.items():
        assert path.stat().st_size <= 400_000, path
        assert len(page.ids) == len(set(page.ids)), (path, [each for each in page.ids if page.ids.count(each) > 1])
        for link in page.links:
            if re.match(r"https?:", link):
                continue
            target, _, anchor = unquote(link).partition("#")
            target = (path.parent / target).resolve() if target else path
            assert target in pages, (path, link)
            assert not anchor or anchor in pages[target].ids, (path, link)
        for load in page.loads:
            assert load == "data:," or (path.parent / load).resolve().is_file(), (path, load)
    for path in [*site.glob("*.css"), *site.glob("*.js")]:
        if not path.name.startswith("search-data"):
            text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")  # 只是名字，不会去取
            assert not re.search(r"https?://|@import|fetch\(|XMLHttpRequest", text), path


def test_same_site_twice(site, tmp_path):
    """同样的脚本画两遍，一个字节不差。"""
    if os.environ.get("READ_ALL"):
        pytest.skip("只在画几页时比")
    load_read().build(tmp_path / "again", SCRIPTS, jobs=1)
    for path in site.rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(site)).read_bytes(), path


def test_never_overwrites_other_things(tmp_path):
    """--out 指到放着别的东西的文件夹：一句话，什么都不动。"""
    need("pygments", "markdown_it", "mdit_py_plugins", "jinja2")
    (tmp_path / "mine.txt").write_text("x", encoding="utf-8")
    done = subprocess.run([sys.executable, str(SETUP / "read.py"), "--no-open", "--out", str(tmp_path)], capture_output=True, encoding="utf-8")
    assert done.returncode == 2 and "不敢覆盖" in done.stderr.splitlines()[-1] and [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("arguments, words", [(["--run", "没有.py"], "不是章节的脚本"), (["--run", "setup/read.py"], "不是章节的脚本"), (["--jobs", "0"], "--jobs 至少是 1"), (["--port", "x"], "要的是整数")])
def test_bad_arguments(arguments, words):
    """参数不对：一句中文，退出码 2。"""
    done = subprocess.run([sys.executable, str(SETUP / "read.py"), *arguments], capture_output=True, encoding="utf-8")
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


def test_broken_script_breaks_its_own_page(monkeypatch):
    """坏的脚本：它自己那一页写明哪里坏了，别的页照旧。"""
    need("pygments", "markdown_it", "mdit_py_plugins", "jinja2")
    render = importlib.import_module("render")
    whole = extract.read_script

    def read_script(path):
        return extract.scan("def f(:\n") if path.name == "multihead_attention.py" else whole(path)

    monkeypatch.setattr(render.extract, "read_script", read_script)
    site = render.Site([ROOT / name for name in SCRIPTS[:2]])
    page, entries, problem = site.script(SCRIPTS[1])
    assert "这一页没有画成" in page and "第 1 行" in page and problem.startswith(SCRIPTS[1]) and entries == []
    assert "没有画成" not in site.script(SCRIPTS[0])[0]


@pytest.mark.parametrize("state", ["stale", "missing"])
def test_stale_record_is_not_shown(monkeypatch, state):
    """旧了的、没有的记录，不显示输出和形状，写明怎样重录。"""
    need("pygments", "markdown_it", "mdit_py_plugins", "jinja2")
    render = importlib.import_module("render")
    if state == "stale":
        monkeypatch.setattr(record, "digest", lambda *_: "0" * 16)
    else:
        monkeypatch.setattr(record, "RECORDS", ROOT / "没有")
    page = render.Site([ROOT / CAUSAL]).script(CAUSAL)[0]
    assert ("已经旧了" if state == "stale" else "尚未录制") in page and f"setup/read.py --run {CAUSAL}" in page
    assert 'class="out"' not in page and "data-s=" not in page


# ---- 浏览器 ----

CONTRAST = """() => {
  const parse = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return text.startsWith("color(srgb") ? [n[0] * 255, n[1] * 255, n[2] * 255, n[3] ?? 1] : [n[0], n[1], n[2], n[3] ?? 1]; };
  const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
  const light = (c) => { const [r, g, b] = c.map((v) => { v /= 255; return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }); return .2126 * r + .7152 * g + .0722 * b; };
  const bad = [];
  for (const el of document.querySelectorAll("body *")) {
    if (![...el.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()) || !el.checkVisibility({ visibilityProperty: true }) || el.closest("svg, #page-say, .skip")) continue;
    const style = getComputedStyle(el), stack = [];
    for (let at = el; at; at = at.parentElement) stack.push(parse(getComputedStyle(at).backgroundColor));
    const back = stack.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]);
    const one = light(over(parse(style.color), back)), two = light(back);
    const ratio = (Math.max(one, two) + .05) / (Math.min(one, two) + .05), size = parseFloat(style.fontSize);
    if (ratio < (size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5)) bad.push([el.tagName, el.className, el.textContent.trim().slice(0, 20), ratio.toFixed(2)]);
  }
  return bad.slice(0, 5);
}"""
NARROW = """() => [document.documentElement.scrollWidth <= innerWidth, [...document.querySelectorAll("main *")].filter((el) => el.getBoundingClientRect().right > innerWidth + 1 && !el.closest("pre, .wide, .toc, svg") && el.checkVisibility()).slice(0, 3).map((el) => el.tagName + "." + el.className + " " + el.textContent.slice(0, 30))]"""


@pytest.fixture(scope="module")
def browser(site):
    """Chromium。"""
    need("playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("没有 Chromium：apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--allow-file-access-from-files"])
        yield opened
        opened.close()


def opened(browser, width=1280, **options):
    """一个窗口，记下它报的错和往外的请求。"""
    context = browser.new_context(viewport={"width": width, "height": 900}, **options)
    page = context.new_page()
    page.trouble = []
    page.on("console", lambda message: page.trouble.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: page.trouble.append(str(error)))
    page.on("request", lambda request: page.trouble.append(request.url) if not request.url.startswith(("file:", "data:")) else None)
    page.on("requestfailed", lambda request: page.trouble.append(f"没有 {request.url}"))
    page.set_default_timeout(5000)
    return page


@pytest.mark.parametrize("width, scheme", [(1280, "light"), (390, "dark")])
def test_every_page(site, browser, width, scheme):
    """每一页：没有报错，没有往外的请求，不横着溢出，对比度够；宽窄、明暗各一遍。"""
    page = opened(browser, width, color_scheme=scheme)
    for path in sorted(site.rglob("*.html")):
        page.goto(path.as_uri())
        page.evaluate("document.querySelectorAll('main details').forEach((each) => { each.open = true })")
        fits, wide = page.evaluate(NARROW)
        assert fits and wide == [], (path, wide)
        assert page.evaluate(CONTRAST) == [], path
        assert page.trouble == [], (path, page.trouble)
        assert page.evaluate("performance.timing.domContentLoadedEventEnd - performance.timing.navigationStart") < 3000, path
    page.context.close()


def test_axe(site, browser):
    """axe-core 认为的严重问题一个没有。"""
    need("axe_playwright_python")
    from axe_playwright_python.sync_playwright import Axe

    for scheme in ("light", "dark"):
        page = opened(browser, color_scheme=scheme)
        for name in ("index.html", "ch03/index.html", CAUSAL.replace(".py", ".html"), SCRIPTS[2].replace(".py", ".html")):
            page.goto((site / name).as_uri())
            found = [(each["id"], each["nodes"][0]["html"][:120]) for each in Axe().run(page).response["violations"] if each["impact"] in ("serious", "critical")]
            assert found == [], (name, scheme)
        page.context.close()


@pytest.mark.parametrize("words, wanted", [("因果掩码", CAUSAL), ("masked_fill_", CAUSAL), ("4.6", SCRIPTS[3]), ("因果 dropout", CAUSAL), ("FILL_(SELF.MASK", "ch03/main")])
def test_search(site, browser, words, wanted):
    """搜汉字、标识符、小节号、两个词，不分大小写，都找得到；方向键走得到，回车打得开。"""
    page = opened(browser)
    page.goto((site / "standards.html").as_uri())
    page.keyboard.press("/")
    page.keyboard.type(words)
    page.wait_for_selector("#find-hits a")
    links = page.eval_on_selector_all("#find-hits a", "links => links.map((a) => a.getAttribute('href'))")
    assert any(wanted.removesuffix(".py") in link for link in links[:4]), links[:6]
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_url("**/ch0*/**")
    assert page.trouble == []
    page.context.close()


def test_search_nothing(site, browser):
    """没有就说没有。"""
    page = opened(browser)
    page.goto((site / "index.html").as_uri())
    page.fill("#find-box", "没有这几个字吧")
    page.wait_for_selector("#find-hits p")
    assert "没有找到" in page.inner_text("#find-hits")
    page.context.close()


def test_covers(site, browser):
    """盖住代码：一行也看不见，一行一行露出来；盖住说明：话都看不见，代码还在。再按一次都回来。"""
    page = opened(browser)
    page.goto((site / CAUSAL.replace(".py", ".html")).as_uri())
    seen = "selector => [...document.querySelectorAll(selector)].filter((el) => el.textContent.trim() && el.checkVisibility({ visibilityProperty: true })).length"
    lines, words = ".rows > .row .code .t", ".rows > .row .prose p"
    all_lines, all_words = page.evaluate(seen, lines), page.evaluate(seen, words)
    page.click("#cover-code")
    assert page.evaluate(seen, lines) == 0 and page.evaluate(seen, words) == all_words
    first = page.locator(".rows > .row .code").first
    for shown in (1, 2):
        first.locator(".reveal").press("Enter")
        assert page.evaluate(seen, lines) == shown
    page.click("#cover-code")
    assert page.evaluate(seen, lines) == all_lines
    page.click("#cover-prose")
    assert page.evaluate(seen, words) == 0 and page.evaluate(seen, lines) == all_lines
    page.locator(".rows > .row .prose .reveal").first.press("Enter")
    assert 0 < page.evaluate(seen, words) < all_words
    page.click("#cover-prose")
    assert page.evaluate(seen, words) == all_words and page.trouble == []
    page.context.close()


def test_shapes_in_the_page(site, browser, fresh):
    """点一个变量：形状、字母、类型就是刚跑出来的；图例里的字母一起亮；键盘也行。"""
    if record.load(CAUSAL, (ROOT / CAUSAL).read_text(encoding="utf-8")).state != "fresh":
        pytest.skip(f"没有这一版的记录：python setup/read.py --run {CAUSAL}")
    page = opened(browser)
    page.goto((site / CAUSAL.replace(".py", ".html")).as_uri())
    source = (ROOT / CAUSAL).read_text(encoding="utf-8").splitlines()
    line = next(number for number, text in enumerate(source, start=1) if "queries @ keys.transpose(1, 2)" in text)
    page.click(f"#L{line} u >> nth=0")
    shape = fresh["shapes"][f"{line}:scores"]
    tip = page.inner_text("#shape-tip")
    assert f"({', '.join(map(str, shape[0]))}) = (b, t, t)" in tip and shape[1] in tip
    assert page.eval_on_selector_all("[data-letter][aria-pressed=true]", "all => all.map((each) => each.dataset.letter)") == ["b", "t"]
    assert page.evaluate("[...new Set([...document.querySelectorAll('b.lit')].map((b) => b.textContent))].sort().join()") == "b,t"
    page.keyboard.press("Escape")
    assert page.is_hidden("#shape-tip")
    page.focus(f"#L{line} u >> nth=1")
    page.keyboard.press("Enter")
    assert page.inner_text("#shape-tip").startswith("queries")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#shape-tip").startswith("keys")
    page.context.close()


def test_shape_of_the_moment():
    """同一个变量改过几次：等号左边是改了之后的，右边是改之前的，后面的行是最近一次的。"""
    need("pygments", "markdown_it", "mdit_py_plugins", "jinja2")
    paint = importlib.import_module("paint")
    name = "ch03/main/example_05_multihead_attention.py"
    kept = record.load(name, (ROOT / name).read_text(encoding="utf-8"))
    if kept.state != "fresh":
        pytest.skip(f"没有这一版的记录：python setup/read.py --run {name}")
    script = extract.read_script(ROOT / name)
    shapes = paint.Shapes(script, kept.shapes)
    line = next(number for number, text in enumerate(script.source.lines, start=1) if text.startswith("queries = queries.view(b, t, h, k)"))

    def at(number, left):
        return shapes.entries[shapes.find(number, "queries", left)][:2]

    assert at(line, True) == ["(2, 6, 3, 4)", "(b, t, h, k)"] and at(line, False)[0] == "(2, 6, 12)"
    assert at(line + 1, False) == ["(2, 6, 3, 4)", "(b, t, h, k)"]
    assert at(line + 2, True) == ["(2, 3, 6, 4)", "(b, h, t, k)"] and at(line + 6, False)[0] == "(2, 3, 6, 4)"


def test_ticks_copy_theme(site, browser):
    """打的勾，下次打开还在，首页数得出来，能填进进度表；复制的是命令；换了明暗，别的页也换。"""
    page = opened(browser, permissions=["clipboard-read", "clipboard-write"])
    page.goto((site / CAUSAL.replace(".py", ".html")).as_uri())
    page.click(".copy >> nth=0")
    page.wait_for_function("document.querySelector('.copy').textContent === '已复制'")
    assert page.evaluate("navigator.clipboard.readText()") == f"python {CAUSAL}"
    page.check("[data-tick] >> nth=1")
    page.reload()
    assert page.is_checked("[data-tick] >> nth=1") and not page.is_checked("[data-tick] >> nth=0")
    page.click("#page-theme")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.goto((site / "index.html").as_uri())
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark
    assert page.inner_text("[data-done=ch03]").startswith("1 /")
    page.click("#progress-export")
    assert "| 3 注意力机制 | ☐ |" in page.input_value("#progress-text")
    every = {name: {str(number): 1 for number in range(99)} for name in (name.replace(".py", ".html") for name in SCRIPTS[:2])}
    page.evaluate("ticks => localStorage.setItem('read:ticks', JSON.stringify(ticks))", every)
    page.reload()
    page.click("#progress-export")
    if not os.environ.get("READ_ALL"):
        assert "| 3 注意力机制 | ☑ |" in page.input_value("#progress-text") and "| 4 从零搭出 GPT | ☐ |" in page.input_value("#progress-text")
    page.context.close()


# ---- 动手的页面：改一改，数与项目自己的组件算的相同 ----


def touched(site, browser, name):
    """打开一个动手的页面；数还没有算就跳过。"""
    if touch.read(name)[0] != "fresh":
        pytest.skip(f"没有这一版的数：python setup/read.py --run touch/{name}")
    page = opened(browser)
    page.goto((site / "touch" / f"{name}.html").as_uri())
    assert page.trouble == []
    return page


@pytest.mark.parametrize("name", touch.PAGES)
def test_touch_with_keys(site, browser, name):
    """只用键盘：滑块一按方向键，页面就跟着变；点按钮也一样；一处报错也没有。"""
    page = touched(site, browser, name)
    before = page.inner_text("#touch-stage")
    page.locator("input[type=range]").first.press("ArrowRight")
    after = page.inner_text("#touch-stage")
    assert after != before
    page.locator("input[type=range]").first.press("ArrowLeft")
    assert page.inner_text("#touch-stage") == before and page.trouble == []
    assert len((SETUP / "read_site" / "static" / f"touch_{name}.js").read_text(encoding="utf-8").splitlines()) <= 300
    page.context.close()


def test_touch_bpe(site, browser):
    """任何文字，编号都与 tiktoken 相同；走到最后一步，显示的就是它。"""
    page, encoding = touched(site, browser, "bpe"), touch.tokenizer()
    story = (SETUP / "data" / "story-zh.txt").read_text(encoding="utf-8")[:300]
    for text in ["Akwirw ier", "今天天气很好，我们去公园散步。", "  two  spaces\n\nand\ttabs ", "don't I'll WE'VE 12345 x_1 += f(y)", "龍 é ñ 🙂🙃", "", "a", "aaaaaaa hahahaha !!!!!!! ======", story, " terraces\u3000全角", "\x85next"]:
        assert page.evaluate("text => encode(text)", text) == encoding.encode(text), text
    page.fill("#text", "The weather is lovely")
    page.click("text=直接到最后")
    assert page.inner_text(".ids").endswith(" ".join(map(str, encoding.encode("The weather is lovely"))))
    page.context.close()


def test_touch_attention(site, browser):
    """√k、因果掩码：与组件的权重相同；别的除数、别的掩码：与 torch 算的相同。"""
    import torch

    page, data = touched(site, browser, "attention"), touch.read("attention")[1]
    for number, head in list(enumerate(data["heads"]))[::2]:
        page.select_option("#head", str(number))
        scores = torch.tensor(head["scores"], dtype=torch.float64)
        future = torch.triu(torch.ones_like(scores), diagonal=1).bool()
        for power in (0.5, 0.25 * number):
            page.locator("input[type=range]").fill(str(power))
            for value, masked in (("inf", scores.masked_fill(future, -torch.inf)), ("zero", scores.masked_fill(future, 0)), ("none", scores)):
                page.check(f"input[value={value}]")
                got = torch.tensor(page.evaluate("weights()"), dtype=torch.float64)
                assert torch.allclose(got, torch.softmax(masked / head["k"] ** power, dim=-1), atol=1e-9)
                if value == "inf" and power == 0.5:
                    assert torch.allclose(got, torch.tensor(head["weights"], dtype=torch.float64), atol=2e-5)
    assert page.inner_text(".shade tbody tr:last-child td:last-child") == f"{got[-1, -1]:.2f}"
    page.context.close()


def test_touch_sampling(site, browser):
    """温度、top-k、top-p 的各种搭配：概率与 exp_sampling.py 的 next_probs 相同，留下的一个不差。"""
    import base64

    import numpy
    import torch

    page, data = touched(site, browser, "sampling"), touch.read("sampling")[1]
    script = touch.load("ch05/experiments/exp_sampling.py")
    sliders = page.locator("input[type=range]")
    for number, prompt in enumerate(data["prompts"]):
        page.check(f"input[value='{number}']")
        logits = torch.from_numpy(numpy.frombuffer(base64.b64decode(prompt["logits"]), dtype="<f2").astype("float64"))[None]
        for temperature, top_k, top_p in [(2.5, 40, 1), (1, 0, 0.9), (0.7, 50, 0.8), (0, 0, 1)]:
            for at, value in enumerate((temperature, top_k, top_p)):
                sliders.nth(at).fill(str(value))
            got = torch.tensor(page.evaluate("[...probabilities()].filter((chance) => chance > 0)"), dtype=torch.float64)
            expected = script.next_probs(logits, torch.zeros(1, 1, dtype=torch.long), temperature, top_k or None, top_p if top_p < 1 else None)[0]
            # float16 里有并列的：跨过 p 的那一个与谁并列，先后不算错
            expected = expected[expected > 0].double()
            assert len(got) == len(expected) and torch.allclose(got.sort().values, expected.sort().values, atol=1e-7), (number, temperature, top_k, top_p)
    page.click("text=抽 100 次")
    assert sum(int(count) for count in re.findall(r"× (\d+)", page.inner_text(".ids[aria-live]"))) <= 100
    page.context.close()


def test_touch_loss(site, browser):
    """每一轮显示的损失和文字，就是 gpt_train.py 的记录里那一轮的。"""
    page = touched(site, browser, "loss")
    name = "ch05/main/gpt_train.py"
    kept = record.load(name, (ROOT / name).read_text(encoding="utf-8"))
    output = "".join(part[1] for parts in kept.cells.values() for part in parts if part[0] == "text")
    for epoch in range(len(touch.read("loss")[1]["texts"])):
        page.locator("input[type=range]").fill(str(epoch))
        told, wrote = page.inner_text(".told"), page.text_content(".wrote")
        lines = output.splitlines()
        written = [re.sub(r"\s+", " ", line.strip()) for line in lines if line.startswith("    Every effort")]
        assert wrote == written[epoch]
        losses = re.findall(rf"^第 +{epoch} 轮　.*训练损失 ([\d.]+)　验证损失 ([\d.]+)", output, re.MULTILINE) or ([re.search(r"^训练前　训练损失 ([\d.]+)　验证损失 ([\d.]+)", output, re.MULTILINE).groups()] if epoch == 0 else [])
        assert all(number in told for number in losses[-1]) if losses else "没有评估" in told
    page.context.close()


def test_touch_kv_cache(site, browser):
    """算了几个词元，数出来的与 ConcatCache 真的收到的相同；格子里的数就是缓存里的键。"""
    import torch

    page, data = touched(site, browser, "kv_cache"), touch.read("kv_cache")[1]
    script = touch.load("ch04/experiments/exp_kv_cache.py")
    cache, total = script.ConcatCache(), len(data["words"]) - data["prompt"]
    one = torch.zeros(1, 1, 1, 1)
    received = 0
    for step in range(total):
        fresh = data["prompt"] if step == 0 else 1
        cache.update(one.expand(1, 1, fresh, 1), one.expand(1, 1, fresh, 1))
        received += fresh
        page.evaluate("at => cache.go(at)", step)
        assert page.evaluate("cache.sum(true)") == received and page.evaluate("cache.work(" + str(step) + ", true).seen") == cache.length
        assert page.locator(".kv .fresh").count() == fresh and page.locator(".kv .kept").count() == cache.length - fresh
    assert page.evaluate("cache.sum(false)") == sum(data["prompt"] + step for step in range(total))
    assert data["gap"] < 1e-4
    path = ROOT / "ch05" / "outputs" / "gpt_mini.pth"
    if path.is_file():
        model, encoding = touch.mini(script), touch.tokenizer()
        caches = [script.ConcatCache() for _ in model.trf_blocks]
        ids = torch.tensor([encoding.encode("".join(data["words"]))])
        if ids.shape[1] == len(data["words"]):
            with torch.no_grad():
                model(ids[:, :-1], caches)
            shown = torch.tensor(page.evaluate("Array.from({ length: 5 }, (_, row) => Array.from({ length: 8 }, (_, column) => cache.key(row, column)))"))
            assert torch.allclose(shown, caches[0].keys[0, 0, :5, :8], atol=data["scale"][0][0] / 127)
    page.context.close()


def test_keyboard(site, browser):
    """只用 Tab：先到「跳到正文」，看得见的每个按钮、链接、输入框都到得了，焦点看得见。"""
    page = opened(browser)
    page.goto((site / SCRIPTS[1].replace(".py", ".html")).as_uri())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    wanted = page.evaluate("[...document.querySelectorAll('a[href], button, input, summary, [tabindex=\"0\"]')].filter((el) => el.checkVisibility({ visibilityProperty: true })).map((el, at) => { el.dataset.stop = at; return at; })")
    reached = set()
    for _ in range(len(wanted) + 10):
        stop, outline = page.evaluate("[document.activeElement.dataset.stop, getComputedStyle(document.activeElement).outlineStyle]")
        if stop is not None:
            reached.add(int(stop))
            assert outline != "none" or stop == "0", page.evaluate("document.activeElement.outerHTML.slice(0, 100)")
        page.keyboard.press("Tab")
    assert reached == set(wanted)
    page.context.close()


def test_unfolds_and_prints(site, browser):
    """链到折叠区里面的，会自己展开；印出来没有顶栏和按钮。"""
    page = opened(browser)
    page.goto((site / SCRIPTS[1].replace(".py", ".html")).as_uri() + "#L100")
    assert page.evaluate("document.querySelector('#L100').checkVisibility()")
    page.emulate_media(media="print")
    assert not page.is_visible(".top") and not page.is_visible(".copy >> nth=0")
    page.context.close()
