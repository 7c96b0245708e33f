"""测试 setup/golden.json 和 setup/self_check.py：书上的数一个不缺，与脚本说的不打架，说谎一定被发现。"""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from once import once

ROOT = Path(__file__).resolve().parents[2]
# 书上每次运行都相同、又不用权重的数（编号的字母后缀不算：2-02a、2-02b 都是 2-02）。
REQUIRED = (
    "2-01 2-02 2-03 2-04 2-05 2-06 2-07 2-08 2-09 2-10 2-11 2-12 2-13 2-14 2-15 2-16 2-17 2-18 "
    "3-01 3-02 3-03 3-04 3-05 3-06 3-07 3-08 3-09 3-10 3-11 3-12 3-13 3-14 3-15 3-18 3-19 3-20 "
    "4-01 4-02 4-03 4-04 4-05 4-06 4-07 4-08 4-09 4-11 4-12 4-13 4-14 4-15 4-16 "
    "5-01 5-02 5-03 5-04 5-05 5-06 5-07 5-12 5-13 5-14 5-15 6-01 6-02 6-03 6-04 6-05 6-09 7-01 7-02 7-03 7-04 7-05 7-06 7-07 "
    "A-01 A-02 A-03 A-04 A-05 A-06 A-07 A-08 A-09 ex-2.1 ex-2.2 ex-3.2 ex-3.3 ex-4.2 ex-5.1 ex-7.1 ex-7.2 ex-7.4 ex-A.3"
).split()
# 一个要跑 5 秒以上：这里不跑，self_check 自己和各章的测试会跑。
SLOW = ("ch05/main/example_01_loss.py", "ch05/main/example_02_training_loop.py", "ch06/main/example_04", "ch07/main/example_03", "ch07/experiments")
BPE = "ch02/experiments/exercise_2_1_bpe_unknown_words.py"  # 不导入 torch，最快


def load():
    """每次都重新导入，互不影响。"""
    spec = importlib.util.spec_from_file_location("self_check", ROOT / "setup" / "self_check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


self_check = load()
ENTRIES = json.loads((ROOT / "setup" / "golden.json").read_text(encoding="utf-8"))["numbers"]
by_id = pytest.mark.parametrize("entry", ENTRIES, ids=[entry["id"] for entry in ENTRIES])


def numbers_of(value):
    """值里的数，不管是数、一串数还是文字。"""
    if isinstance(value, str):
        return self_check.numbers(value)
    return [float(number) for number in (value if isinstance(value, list) else [value])]


def claims(path):
    """脚本里 confirm 说的每一句；f 字符串里要填的地方换成 …，用变量拼出来的句子不算。"""
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(call, ast.Call) and getattr(call.func, "id", None) == "confirm":
            parts = call.args[0].values if isinstance(call.args[0], ast.JoinedStr) else [call.args[0]]
            yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in parts)


# ── golden.json ──


def test_every_number_of_the_book_is_there():
    assert set(REQUIRED) - {re.sub(r"(?<=\d)[a-z]$", "", entry["id"]) for entry in ENTRIES} == set()
    assert len({entry["id"] for entry in ENTRIES}) == len(ENTRIES)


@by_id
def test_entry_is_complete(entry):
    assert (ROOT / entry["script"]).is_file() and entry["script"].split("/")[0] in self_check.CHAPTERS
    assert re.compile(entry["find"]).groups >= 1
    assert entry["tolerance"].keys() == {"cpu", "mps", "cuda"}
    assert entry["tolerance"]["cpu"] <= min(entry["tolerance"].values()), "CPU 上应当最准"
    assert all(need.split("|")[0] in self_check.GET for need in entry["needs"])
    assert all(re.search("[\u4e00-\u9fff]", entry[key]) for key in ("what", "why", "causes"))
    assert isinstance(entry["full"], bool) and (entry["value"] or entry["value"] == 0)
    assert set(re.findall(r"\{\w+\}", " ".join(entry["args"]))) <= {"{device}", "{tmp}"}


@by_id
def test_script_says_the_same(entry):
    """自查里说了的，字面上能找到，而且数是同样的数：改了一边没改另一边，这里就会红。"""
    if entry["confirm"] is None:
        return
    assert any(entry["confirm"] in claim for claim in claims(ROOT / entry["script"])), "脚本的 confirm 里没有这一句"
    said, value = self_check.numbers(entry["confirm"]), numbers_of(entry["value"])
    digits = [len(text.split(".")[1]) if "." in text else 0 for text in re.findall(r"\d[\d,]*(?:\.\d+)?(?:e-?\d+)?", entry["confirm"])]
    close = {number for number, places in zip(said, digits) if any(abs(number - each) <= 0.5001 * 10**-places * (number != int(number)) for each in value)}
    assert len(close) in (len(set(said)), len(set(value))), f"脚本说 {said}，golden.json 说 {value}"


def test_readme_says_how_many():
    said = re.search(r"共 (\d+) 项（另有 (\d+) 项", (ROOT / "README.md").read_text(encoding="utf-8"))
    full = sum(entry["full"] for entry in ENTRIES)
    assert (int(said[1]), int(said[2])) == (len(ENTRIES) - full, full)


def test_a_changed_number_is_noticed():
    """上一个测试真的会红：值改一点点就不行。"""
    entry = next(entry for entry in ENTRIES if entry["id"] == "3-04")
    with pytest.raises(AssertionError, match="golden.json 说"):
        test_script_says_the_same(entry | {"value": [0.4419, 0.6516, 0.5683]})
    with pytest.raises(AssertionError, match="没有这一句"):
        test_script_says_the_same(entry | {"confirm": "journey 的上下文向量与原书一致：[0.4420, 0.6515, 0.5683]"})


@pytest.mark.parametrize("chapter", self_check.CHAPTERS)
def test_golden_numbers_are_printed(chapter, monkeypatch, capsys):
    """真的跑脚本：印出来的与 golden.json 的相同，脚本自己也没有 ✗。缺数据的那些数不查。"""
    monkeypatch.setattr(self_check.subprocess, "run", lambda command, **_: once(Path(command[1]), *command[2:]))
    todo = [e for e in ENTRIES if e["script"].startswith(chapter) and not e["script"].startswith(SLOW) and not e["full"] and not any(map(self_check.missing, e["needs"]))]
    results, scripts = self_check.check(todo, "cpu", 1)
    assert [(result["id"], result["got"]) for result in results if not result["ok"]] == []
    assert [script for script in scripts if script["error"] or script["failed"]] == []
    if not todo:
        pytest.skip("没有原书的数据：请设置 LLM_DATA_DIR")


# ── self_check.py ──


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """command(项…, 参数…) → 退出码、stdout、stderr；golden.json 换成给定的几项。"""

    def call(entries, *args):
        module = load()
        golden = tmp_path / "golden.json"
        golden.write_text(json.dumps({"numbers": entries}), encoding="utf-8")
        monkeypatch.setattr(module, "GOLDEN", golden)
        if (tmp_path / "ch02").is_dir():
            monkeypatch.setattr(module, "ROOT", tmp_path)
        monkeypatch.setattr(sys, "argv", ["self_check.py", *map(str, args)])
        with pytest.raises(SystemExit) as error:
            module.main()
        out, err = capsys.readouterr()
        return error.value.code, out, err

    return call


@pytest.fixture
def script(tmp_path):
    """写一个小脚本，返回核对它的一项。"""

    def write(code, value=1, find=r"得到 (.*)$", **more):
        path = tmp_path / "ch02" / "main" / "tiny.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code, encoding="utf-8")
        tolerance = {"cpu": 0, "mps": 0.5, "cuda": 0.5}
        entry = {"id": "9-01", "section": "9.1", "script": "ch02/main/tiny.py", "args": [], "needs": [], "full": False, "what": "小数", "causes": "抄错了"}
        return entry | {"value": value, "find": find, "tolerance": tolerance} | more

    return write


def test_numbers():
    assert self_check.numbers("tensor([[0.4656, -inf], [1., 7.5e-05]]) 163,009,536") == [0.4656, 1.0, 7.5e-05, 163009536.0]
    assert self_check.numbers("(2, 4, 50257) [1,2] -5.9605e-08") == [2, 4, 50257, 1, 2, -5.9605e-08]
    assert self_check.numbers("nan") == []


def test_a_real_script(command):
    entry = next(entry for entry in ENTRIES if entry["script"] == BPE)
    code, out, err = command([entry], "ch02/")
    assert (code, err) == (0, "")
    assert "✓ ex-2.1" in out and "书上的数 1 ✓ 0 ✗" in out and "脚本自己的检查 3 ✓ 0 ✗" in out
    lie = entry | {"value": [33901, 86, 343, 86, 220, 960]}
    code, out, err = command([lie])
    assert code == 1 and "✗ ex-2.1" in out and f"常见原因：{entry['causes']}" in out and "33901 86 343 …共 6 个" in out
    assert "差得最多的是第 6 个：应为 960，得到 959" in out


@pytest.mark.parametrize(
    ("printed", "value", "ok"),
    [
        ("得到 1", 1, True),
        ("得到 1.1", 1, False),
        ("得到 [1, 2]", [1, 2], True),
        ("得到 [1, 2, 3]", [1, 2], False),  # 多一个也不行
        ("得到 [1]", [1, 2], False),
        ("得到 nan", 1, False),
        ("没有", 1, False),
        ("得到 两个　词", "两个 词", True),
        ("得到 两个词", "两个 词", False),
    ],
)
def test_comparison(command, script, printed, value, ok):
    code, out, err = command([script(f"print({printed!r})", value)])
    assert (code, err) == (0 if ok else 1, "")
    assert ("✓ 9-01" in out) == ok and ("常见原因：抄错了" in out) != ok
    assert ("应有 2 个数，得到" in out) == (isinstance(value, list) and not ok)


def test_tolerance_depends_on_the_device(script):
    entry = script("")
    assert not self_check.matches(entry, [1.4], "cpu")
    assert self_check.matches(entry, [1.4], "mps") and not self_check.matches(entry, [1.6], "mps")


def test_a_crash_is_one_line(command, script):
    code, out, err = command([script("print('得到 1')\nraise RuntimeError('内存不够')")])
    assert (code, err) == (1, "")
    assert "没有跑完：RuntimeError: 内存不够" in out and "Traceback" not in out
    assert "没有跑完 1 个" in out


def test_a_killed_script_is_explained(command, script):
    code, out, _ = command([script("import os; os._exit(9)")])
    assert code == 1 and "退出码 9" in out


def test_the_scripts_own_crosses_count(command, script):
    code, out, _ = command([script("print('得到 1')\nprint('  ✓ 甲')\nprint('  ✗ 乙　常见原因：丙')")])
    assert code == 1 and "✓ 9-01" in out and "脚本自己的检查 1 ✓ 1 ✗" in out and "乙　常见原因：丙" in out


def test_missing_data_is_skipped_with_a_command(command, script, monkeypatch, tmp_path):
    monkeypatch.setenv("LLM_DATA_DIR", str(tmp_path))
    entry = script("raise SystemExit('不该运行')", needs=["gpt2-355M.pth"])
    if self_check.missing("gpt2-355M.pth") is None:
        pytest.skip("这台机器上有 355M 的权重")
    code, out, _ = command([entry, entry | {"id": "9-02", "needs": [], "full": True}])
    assert code == 0
    assert "1 个　没有 gpt2-355M.pth，运行 python ch05/main/gpt_download.py --size 355M" in out and "很慢，加上 --full 才查" in out and "跳过 2 个" in out
    (tmp_path / "gpt2-355M.pth").write_bytes(b"")
    assert command([entry])[0] == 1  # 有了文件就会运行


def test_arguments_are_filled_in(command, script, tmp_path):
    entry = script("import sys, os\nprint('得到', sys.argv[1], os.path.isdir(sys.argv[2]))", "cpu True", args=["{device}", "{tmp}"])
    assert command([entry])[0] == 0


def test_one_run_per_script(command, script, tmp_path):
    entry = script("import pathlib\nwith open(pathlib.Path(__file__).with_name('log'), 'a') as log: log.write('x')\nprint('得到 1')")
    code, out, _ = command([entry, entry | {"id": "9-02"}])
    assert code == 0 and "✓ 9-01" in out and "✓ 9-02" in out and "1 个脚本" in out
    assert (tmp_path / "ch02/main/log").read_text() == "x"


def test_json(command, script, tmp_path):
    out_file = tmp_path / "结果.json"
    code, out, _ = command([script("print('得到 2')")], "--json", out_file)
    result = json.loads(out_file.read_text(encoding="utf-8"))
    assert code == 1 and result["numbers"][0] | {"got": [2.0], "ok": False, "id": "9-01"} == result["numbers"][0]
    assert result["torch"] and result["scripts"][0]["script"] == "ch02/main/tiny.py"
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ch08"], "不认识的章 ch08"),
        (["--jobs", "0"], "--jobs 至少是 1"),
        (["--jobs", "两"], "--jobs 要的是整数"),
        (["--json", "没有/这个/文件.json"], "没有文件夹"),
        (["--device", "tpu"], "--device 不能是"),
    ],
)
def test_bad_arguments(command, script, arguments, message):
    code, out, err = command([script("print('得到 1')")], *arguments)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_marks_survive_a_gbk_console():
    """真的从命令行跑一次：别的文件夹、GBK 终端。"""
    env = os.environ | {"PYTHONIOENCODING": "gbk", "LLM_DATA_DIR": ""}
    result = subprocess.run([sys.executable, str(ROOT / "setup" / "self_check.py"), "--help"], cwd=ROOT.anchor, env=env, capture_output=True)
    assert result.returncode == 0 and "golden.json" in result.stdout.decode("gbk")
