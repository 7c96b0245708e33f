"""动手改的记录：规则会抓住该抓的；真的记录齐全；抽几条真的改、真的跑。

运行：python -m pytest setup/tests/test_edits.py
"""

import importlib.util
import json
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[1] / "checks" / "edits.py"
SCRIPT = '''"""第 3 章 · 实验　甲

动手改：1. 把 N 改成 3：印出三。
        2. --loud：大声。

运行：
    python ch03/experiments/exp_a.py
"""
import sys

N = 2
# region 沿用 ch02/main: f
# endregion
print("大声" if "--loud" in sys.argv else N)
if N > 5:
    sys.exit(2)
'''


@pytest.fixture
def edits(tmp_path, monkeypatch):
    """工具，项目换成 tmp_path 里的一个小的。"""
    spec = importlib.util.spec_from_file_location("edits", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.REAL = module.ROOT
    (tmp_path / "ch03" / "experiments").mkdir(parents=True)
    (tmp_path / "ch03" / "experiments" / "exp_a.py").write_text(SCRIPT, encoding="utf-8")
    module.ROOT, module.RECORDS = tmp_path, tmp_path / "edits.json"
    return module


def entry(**changes):
    """一条记录。"""
    return {"script": "ch03/experiments/exp_a.py", "number": 1, "replace": [["N = 2", "N = 3"]], "args": [], "sees": ["^3"], "not": ["2"], "code": 0} | changes


def test_promised(edits):
    assert edits.promised(SCRIPT) == [1, 2]
    assert edits.promised("# %% 动手改\n# 1. 甲\n#    第 2. 行的续行不算\n# 2. 乙\n\n# %% 思考\n# 3. 丙\n") == [1, 2]
    assert edits.promised('"""没有。"""\n') == []


def test_digest_ignores_copied_regions(edits):
    copied = SCRIPT.replace("# region 沿用 ch02/main: f\n", "# region 沿用 ch02/main: f\ndef f():\n    pass\n")
    assert edits.digest(copied) == edits.digest(SCRIPT) != edits.digest(SCRIPT.replace("N = 2", "N = 1"))


def test_digest_ignores_measured_times(edits):
    """重新量过的用时只改开头那一行，不必重试；同一行写在代码里的不算。"""
    timed = SCRIPT.replace("exp_a.py\n", "exp_a.py\n    约 3 秒，0.3 GB（2 核 CPU）\n")
    assert edits.digest(timed) == edits.digest(timed.replace("约 3 秒", "约 30 秒")) == edits.digest(SCRIPT)
    assert edits.digest(SCRIPT) != edits.digest(SCRIPT + "# 约 3 秒，0.3 GB（2 核 CPU）\n")


def test_attempt(edits):
    """做到了的通过；说了没做到、看到不该有的、退出码不同、原文不在了，都说得出。"""
    assert edits.attempt(entry()) == ""
    assert edits.attempt(entry(replace=[], args=["--loud"], sees=["大声"])) == ""
    assert edits.attempt(entry(replace=[["N = 2", "N = 9"]], sees=["9"], code=2)) == ""
    assert "没有看到" in edits.attempt(entry(sees=["4"]))
    assert "不该看到" in edits.attempt(entry(**{"not": ["3"]}))
    assert "退出码是 2" in edits.attempt(entry(replace=[["N = 2", "N = 9"]]))
    assert "出现了 0 次" in edits.attempt(entry(replace=[["N = 7", "N = 3"]]))
    assert "出现了 3 次" in edits.attempt(entry(replace=[["大声", "小声"]])) or "出现了 2 次" in edits.attempt(entry(replace=[["大声", "小声"]]))
    assert (edits.ROOT / "ch03" / "experiments" / "exp_a.py").read_text(encoding="utf-8") == SCRIPT  # 原来的脚本没有动


def test_survey_and_all(edits, monkeypatch, capsys):
    """没有记的、多记的、试过之后又改了的，各点名；--all 试成了记下摘要，从此不再点名。"""

    def run(*args):
        monkeypatch.setattr("sys.argv", ["edits.py", *args])
        with pytest.raises(SystemExit) as stopped:
            edits.main()
        return stopped.value.code, capsys.readouterr().out

    edits.write([entry(), entry(number=3)])
    code, out = run()
    assert code == 1 and "动手改 2 没有记录" in out and "记录了动手改 3" in out and "动手改 1、3 试过之后" in out
    edits.write([entry(), entry(number=2, replace=[], args=["--loud"], sees=["大声"])])
    assert run("--all")[0] == 0 and run() == (0, "2 条「动手改」都记着，都试过\n")
    script = edits.ROOT / "ch03" / "experiments" / "exp_a.py"
    script.write_text(SCRIPT.replace("N = 2", "N = 2  # 换了"), encoding="utf-8")
    assert run()[0] == 1
    assert run("--changed")[0] == 0 and run()[0] == 0
    script.write_text(SCRIPT.replace("print(", "print(0 * "), encoding="utf-8")
    code, out = run("--changed")
    assert code == 1 and "✗ ch03/experiments/exp_a.py　动手改 2" in out


def test_the_real_records(edits):
    """第 2–4 章的每一条都记着，要改的文字都还在，改完还是 Python。（试过之后又改了的，由 edits.py 点名，重试要大半个小时。）"""
    edits.ROOT = edits.REAL
    entries = json.loads(TOOL.with_name("edits.json").read_text(encoding="utf-8"))
    assert [problem for problem in edits.survey(entries) if "又改了" not in problem] == []
    for each in entries:
        compile(edits.edited((edits.ROOT / each["script"]).read_text(encoding="utf-8"), each["replace"]), each["script"], "exec")
    assert len(entries) > 140


def test_a_sample(edits):
    """main/ 里抽几条，真的改、真的跑。"""
    edits.ROOT = edits.REAL
    entries = [each for each in json.loads(TOOL.with_name("edits.json").read_text(encoding="utf-8")) if "/main/" in each["script"] and not each.get("slow")]
    assert {each["script"]: edits.attempt(each) for each in entries[3::8]} == {each["script"]: "" for each in entries[3::8]}
