"""测试 setup/checks/measure.py：量得准，只改该改的地方，没量成就什么也不写。"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "wait4"), reason="Windows 上量不了内存")
PATH = Path(__file__).resolve().parents[1] / "checks" / "measure.py"


spec = importlib.util.spec_from_file_location("measure", PATH)
measure = importlib.util.module_from_spec(spec)
spec.loader.exec_module(measure)
SCRIPT = '''"""第 2 章 · 小脚本

运行：
    python ch02/main/small.py
    {cost}
"""
import sys, time
{code}
'''
CHAPTER = "| 节 | 脚本 | 讲什么 | 用时 |\n|---|---|---|---|\n| 2.1 | `main/small.py` | 9 秒看完 | 30 秒 |\n| 2.2 | `main/other.py` | | 30 秒 |\n"
ROOT_README = "约 30 秒，别动我\n\n| 2.1 | `ch02/main/small.py` | 30 秒，2.0 GB；124M 另算 |\n"


# 在新的进程里量：子进程的内存峰值，Linux 从分叉那一刻的父进程算起，而跑到这里的 pytest 可能已经占了几 GB。
DRIVER = """
import importlib.util, os, sys
from pathlib import Path
path, root, load, cores, *arguments = sys.argv[1:]
spec = importlib.util.spec_from_file_location("measure", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
if root:
    module.ROOT, sys.argv = Path(root), ["measure.py", *arguments]
    os.getloadavg = lambda: (float(load), 0.1, 0.1)
    os.sched_getaffinity = lambda pid: set(range(int(cores)))
    module.main()
else:
    print(*module.run([sys.executable, *arguments], 60))
"""


def fresh(root, load, cores, *arguments):
    """在新的进程里运行 DRIVER。"""
    env = {name: value for name, value in os.environ.items() if name != "LLM_DATA_DIR"} | {"PYTHONIOENCODING": "utf-8"}
    return subprocess.run([sys.executable, "-c", DRIVER, PATH, str(root), str(load), str(cores), *arguments], cwd=root or None, env=env, capture_output=True, encoding="utf-8")


@pytest.fixture
def project(tmp_path):
    """一个小项目；project(代码, 那一行, 参数…) → 退出码、stdout、stderr。机器装作空闲、2 核。"""
    (tmp_path / "ch02" / "main").mkdir(parents=True)
    (tmp_path / "ch02" / "README.md").write_text(CHAPTER, encoding="utf-8")
    (tmp_path / "README.md").write_text(ROOT_README, encoding="utf-8")

    def call(code, cost="约 30 秒，2.0 GB（2 核 CPU）", *args, load=0.1, cores=2):
        script = tmp_path / "ch02" / "main" / "small.py"
        script.write_text(SCRIPT.format(cost=cost, code=code), encoding="utf-8")
        done = fresh(tmp_path, load, cores, *args)
        return done.returncode, done.stdout, done.stderr

    call.root = tmp_path
    call.header = lambda: (tmp_path / "ch02" / "main" / "small.py").read_text(encoding="utf-8").splitlines()[4].strip()
    return call


# ── 怎么写 ──


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "1 秒"), (1.4, "1 秒"), (2.6, "3 秒"), (9.6, "10 秒"), (23.7, "24 秒"), (99, "99 秒"), (104, "100 秒"), (119, "2 分钟"), (149, "2 分半"), (214, "3 分半"), (290, "5 分钟"), (700, "12 分钟"), (3600, "60 分钟")],
)
def test_time_is_rounded(seconds, text):
    assert measure.say_time(seconds) == text


@pytest.mark.parametrize(("memory", "text"), [(0.01, "0.1"), (0.24, "0.2"), (1.26, "1.3"), (12.4, "12")])
def test_memory_is_rounded(memory, text):
    assert measure.say_memory(memory) == text


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("约 3 秒，0.3 GB（2 核 CPU）；后面的话", "约 10 秒，1.0 GB（2 核 CPU）；后面的话"),
        ("约 N 秒，N GB（2 核 CPU）", "约 10 秒，1.0 GB（2 核 CPU）"),
        ("约 TIME 秒，MEM GB；--bench 约 2 分钟，BMEM GB（2 核 CPU）", "约 10 秒，1.0 GB；--bench 约 2 分钟，BMEM GB（2 核 CPU）"),
        ("mini 约 3 分半，0.9 GB（2 核 CPU）", "mini 约 10 秒，0.9 GB（2 核 CPU）"),  # 内存差得不多，只改时间
        ("mini 约 90 秒，1.5 GB；124M 约 8 分钟，5 GB（2 核 CPU）", "mini 约 10 秒，1.0 GB；124M 约 8 分钟，5 GB（2 核 CPU）"),
        ("mini 约 12 分钟，1.0 GB（1 核 CPU，由 15 步推算）；--quick 约 10 秒；没有时另加", "mini 约 10 秒，1.0 GB（2 核 CPU）；--quick 约 4 秒；没有时另加"),
        ("约 12 秒，1.1 GB（2 核 CPU）", "约 12 秒，1.1 GB（2 核 CPU）"),  # 都不到四分之一
        ("约 9 秒，0.8 GB（2 核 CPU）", "约 9 秒，0.8 GB（2 核 CPU）"),
    ],
)
def test_header_line(old, new):
    source = SCRIPT.format(cost=old, code="x = '约 3 秒，0.3 GB（2 核 CPU）'")
    text, before, after = measure.new_header(source, 10.2, 1.0, 4.0)
    assert (before, after) == (old, new)
    assert text == source.replace(f"    {old}\n", f"    {new}\n", 1)  # 别处一个字也没动


def test_no_header_line():
    assert measure.new_header('"""没有写。"""\nx = "约 3 秒，0.3 GB（2 核 CPU）"\n', 9.0, 1.0, None)[1:] == ("", "")


@pytest.mark.parametrize(
    ("cell", "new"),
    [("3 秒", "10 秒"), ("约 3 秒", "约 10 秒"), ("3 秒，0.3 GB", "10 秒，1.0 GB"), ("mini 约 90 秒", "mini 约 10 秒"), ("WSS 秒，WSG GB", "10 秒，1.0 GB"), ("2 秒，不算下载", "10 秒，不算下载"), ("1 个进程 3 秒，2 个 6 秒", "1 个进程 10 秒，2 个 6 秒"), ("与下一行合计 8 秒", None), ("你的由脚本量", None), ("9 秒", None)],
)
def test_readme_cell(cell, new):
    row = f"| 2.1 {cell} | `main/a.py`；`main/b.py` | 讲 {cell} | {cell} |\r\n"
    text, changes = measure.new_readme("# 标题\r\n" + row + row.replace("a.py", "c.py"), "main/a.py", 10.2, 1.0)
    assert changes == ([(cell, new)] if new else [])
    assert text == "# 标题\r\n" + (row[: row.rindex(cell)] + new + " |\r\n" if new else row) + row.replace("a.py", "c.py")


# ── 量 ──


def test_seconds_and_memory():
    """睡半秒、占 300 MB；子进程占的也算。"""
    seconds, memory, problem = fresh("", 0, 0, "-c", "import time; x = bytearray(300 << 20); time.sleep(0.5)").stdout.split()
    assert problem == "None" and 0.5 < float(seconds) < 20 and 0.29 < float(memory) < 0.4
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'x = bytearray(300 << 20)'])"
    assert 0.29 < float(fresh("", 0, 0, "-c", code).stdout.split()[1]) < 0.4


def test_a_stuck_script_and_its_children_are_stopped(tmp_path):
    child = tmp_path / "child.py"
    child.write_text("import pathlib, sys, time; time.sleep(3); pathlib.Path(sys.argv[1]).touch()", encoding="utf-8")
    code = f"import subprocess, sys; subprocess.run([sys.executable, {str(child)!r}, {str(tmp_path / 'late')!r}])"
    seconds, _, problem = measure.run([sys.executable, "-c", code], 1)
    assert seconds < 3 and "超过" in problem
    measure.time.sleep(3)
    assert not (tmp_path / "late").exists()


def test_everything_is_written(project):
    code, out, err = project("x = bytearray(400 << 20)")
    assert (code, err) == (0, "")
    assert project.header() == "约 1 秒，0.4 GB（2 核 CPU）"
    assert (project.root / "ch02" / "README.md").read_text(encoding="utf-8") == CHAPTER.replace("9 秒看完 | 30 秒", "9 秒看完 | 1 秒")
    assert (project.root / "README.md").read_text(encoding="utf-8") == ROOT_README.replace("| 30 秒，2.0 GB", "| 1 秒，0.4 GB")
    assert "约 30 秒，2.0 GB（2 核 CPU）" in out and "→ 约 1 秒，0.4 GB（2 核 CPU）" in out and "量了 1 个脚本" in out
    assert not list(project.root.rglob("*.part"))


def test_dry_run_writes_nothing(project):
    code, out, _ = project("", "约 30 秒，2.0 GB（2 核 CPU）", "--dry-run")
    assert code == 0 and "→ 约 1 秒，0.1 GB" in out and "什么也没写" in out
    assert project.header() == "约 30 秒，2.0 GB（2 核 CPU）" and (project.root / "README.md").read_text(encoding="utf-8") == ROOT_README


def test_quick_and_out_are_used(project):
    """--quick 也量；能写到别处的，就不碰训练好的模型。"""
    body = 'assert sys.argv[sys.argv.index("--out") + 1]\nif "--quick" not in sys.argv: time.sleep(1.6)'
    code, out, _ = project(body, "约 30 秒，2.0 GB（2 核 CPU）；--quick 约 50 秒", "ch02/main/small.py")
    assert code == 0 and re.fullmatch(r"约 [2-9] 秒，0\.1 GB（2 核 CPU）；--quick 约 [1-3] 秒", project.header()), project.header()


@pytest.mark.parametrize(
    ("body", "reason"), [("sys.exit('出错了：没有数据')", "出错了：没有数据"), ("sys.exit(3)", "退出码 3"), ("1 / 0", "ZeroDivisionError"), ("print('  ✗ 不对　常见原因：抄错')", "自查有 ✗：不对"), ("time.sleep(60)", "超过")]
)
def test_failures_are_not_written(project, body, reason):
    code, out, err = project(body, "约 30 秒，2.0 GB（2 核 CPU）", "--limit", "0.02")
    assert (code, err) == (1, "") and reason in out and "1 个没有量成" in out
    assert project.header() == "约 30 秒，2.0 GB（2 核 CPU）" and (project.root / "README.md").read_text(encoding="utf-8") == ROOT_README


# ── 不该量的时候 ──


def test_refuses_on_a_busy_machine(project):
    code, out, err = project("", load=1.7)
    assert (code, out) == (2, "") and "机器不空闲（一分钟的平均负载 1.7" in err and err.count("\n") == 1
    assert project("", "约 30 秒，2.0 GB（2 核 CPU）", "--force", load=1.7)[0] == 0


def test_refuses_on_other_core_counts(project):
    code, _, err = project("", cores=8)
    assert code == 2 and "8 个核" in err


def test_refuses_with_weights(project):
    (project.root / "setup" / "downloads").mkdir(parents=True)
    (project.root / "setup" / "downloads" / "gpt2-124M.safetensors").write_bytes(b"")
    code, _, err = project("")
    assert code == 2 and "GPT-2 的权重" in err


def test_refuses_without_the_mini_model(project):
    (project.root / "ch06" / "main").mkdir(parents=True)
    (project.root / "ch06" / "main" / "a.py").write_text("", encoding="utf-8")
    code, _, err = project("")
    assert code == 2 and "先运行 python ch05/main/gpt_train.py" in err


@pytest.mark.parametrize(("arguments", "message"), [(["没有.py"], "找不到脚本"), (["--limit", "0"], "--limit 要大于 0"), (["--limit", "久"], "--limit 要的是数字"), ([str(PATH)], "要在这个项目里")])
def test_bad_arguments(project, arguments, message):
    code, out, err = project("", "约 30 秒，2.0 GB（2 核 CPU）", *arguments)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("seconds", "memory", "expected"),
    [(1.4, 0.22, "约 2 秒，0.3 GB"), (3.1, 0.3, "约 3 秒，0.3 GB"), (2.0, 0.41, "约 2 秒，0.4 GB"), (1.9, 0.3, "约 2 秒，0.3 GB")],
)
def test_less_than_one_unit_is_only_rounding(seconds, memory, expected):
    assert measure.updated(measure.HEADER, "约 2 秒，0.3 GB", seconds, memory) == expected
