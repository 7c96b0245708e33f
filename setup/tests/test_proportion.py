"""proportion.py：每一行归对了类，超过限度的一定报出来；main/ 的讲解都摊开在自己那一节。"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "setup" / "checks" / "proportion.py"

SCRIPT = '''"""一个小脚本。"""

import argparse
from pathlib import Path

import torch

# 这里改
STEPS = 3
OUTPUTS = Path(__file__).resolve().parent


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    return ok


# endregion


# region 沿用 ch04/main: LayerNorm
class LayerNorm:
    pass


# endregion


def teach(x):
    """讲一件事。"""
    # 为什么
    y = x * 2  # (t,)
    return y


def save(path, model):
    """全是管道的函数，连文档也是。"""
    torch.save(model, path)


def main():
    """命令行。"""
    parser = argparse.ArgumentParser(description="试")
    # 说明下一个参数
    parser.add_argument("--size")
    args = parser.parse_args()
    if args.size is None:
        parser.error("要写 --size")
    print(teach(torch.ones(STEPS)))
    try:
        teach(1)
    except ValueError as error:
        parser.error(str(error))
    print("\\n这个数字对吗？")
    confirm("对", True, "")


if __name__ == "__main__":
    main()
'''


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("proportion", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kinds(tool, tmp_path, text):
    """写一个脚本，返回"行的文字 → 类"。"""
    path = tmp_path / "script.py"
    path.write_text(text, encoding="utf-8")
    lines = text.splitlines()
    return {lines[number - 1].strip(): kind for number, kind in tool.classify(path).items()}


def test_every_line_has_the_right_kind(tool, tmp_path):
    found = kinds(tool, tmp_path, SCRIPT)
    for line, kind in {
        "import argparse": "导入",
        "STEPS = 3": "课",
        "# 这里改": "课",
        "OUTPUTS = Path(__file__).resolve().parent": "管道",
        "class LayerNorm:": "抄写",
        "def confirm(claim, ok, hint):": "自查",
        "y = x * 2  # (t,)": "课",
        "# 为什么": "课",
        '"""全是管道的函数，连文档也是。"""': "管道",
        "def save(path, model):": "管道",
        "# 说明下一个参数": "管道",
        'parser.error("要写 --size")': "管道",
        "if args.size is None:": "管道",
        "print(teach(torch.ones(STEPS)))": "课",
        "teach(1)": "课",
        "except ValueError as error:": "管道",
        'confirm("对", True, "")': "自查",
        "main()": "管道",
    }.items():
        assert found[line] == kind, line
    assert not any(line.startswith(("# region", "# endregion")) or not line for line in found)


def test_a_changed_copy_is_lesson(tool, tmp_path):
    assert kinds(tool, tmp_path, SCRIPT.replace("region 沿用 ch04", "region 改写 ch04"))["class LayerNorm:"] == "课"


def test_limits_are_reported(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    (tmp_path / "ch02/main").mkdir(parents=True)
    path = tmp_path / "ch02/main/example_01_x.py"
    long = "def long():\n" + "    x = 1\n" * 60
    path.write_text("# 讲\n" * 80 + "# %% 第一格\n" + "import os\n" + "y = open(1)\n" * 60 + long + "def train_model_simple():\n" + "    x = 1\n" * 30, encoding="utf-8")
    _, problems = tool.check([path])
    text = "\n".join(problems)
    for part in ("管道占", "long 有 61 行代码，至多 60", "train_model_simple 有 31 行代码，至多 30", "第一格 # %% 在第 81 行", "合计　管道占"):
        assert part in text, text
    path.write_text("# %% 第一格\nx = 1\n", encoding="utf-8")
    assert tool.check([path])[1] == []


def test_lesson_share_is_reported(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    path = tmp_path / "multi.py"
    path.write_text("import os\n" * 3 + "x = 1\n" * 2, encoding="utf-8")
    assert any("合计　课占" in problem for problem in tool.check([path])[1])


def test_main_keeps_the_limits():
    result = subprocess.run([sys.executable, TOOL], capture_output=True, encoding="utf-8", timeout=120)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("arguments", [["没有.py"], ["--什么"]])
def test_bad_arguments(arguments):
    result = subprocess.run([sys.executable, TOOL, *arguments], capture_output=True, encoding="utf-8", timeout=120)
    assert result.returncode == 2 and result.stderr.count("\n") == 1


# ── 主角摊开讲：组件在自己那一节，不在折叠区里 ──


def test_every_component_is_taught_unfolded_in_its_walkthrough(tool):
    """总结脚本自己不定义组件：除了 main 和它的帮手，都是从同一章的逐步讲解里沿用的，而讲解那里没有折叠。"""
    import ast

    summaries = [path for path in tool.scripts() if not path.name.startswith("example_")]
    assert len(summaries) >= 9
    for path in summaries:
        chapter = path.parent.relative_to(ROOT).as_posix()
        taken = [(source, names) for kind, source, names, *_ in tool.copy_forward.regions(path) if kind == "沿用（含注释）"]
        for source, names in taken:
            assert source.startswith(chapter), f"{path.name}：连注释沿用的，应当是同一章的"
            for name in names:
                home = tool.copy_forward.home(source, name)
                assert Path(home).name.startswith("example_") and name in tool.copy_forward.originals(home)
        inside = {number for *_, start, end in tool.copy_forward.regions(path) for number in range(start + 1, end + 2)}
        tree = ast.parse(path.read_text(encoding="utf-8"))
        own = [node.name for node in tree.body if isinstance(node, ast.ClassDef) and node.lineno not in inside]
        assert own == [], f"{path.name} 里的 {own} 应当在逐步讲解里讲"


def test_practice_components_of_main_have_their_home_in_a_walkthrough(tool):
    sys.path.insert(0, str(ROOT / "setup" / "practice_engine"))
    import cutting

    found = [each for each in cutting.components().values() if "/main" in each.spec["source"]]
    assert len(found) >= 60
    for each in found:
        folded = [name for name in each.parts if name not in tool.copy_forward.originals(each.source)]
        assert folded == [], f"{each.name}：{each.source} 里的 {folded} 在折叠区里"
