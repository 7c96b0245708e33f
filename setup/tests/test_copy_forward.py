"""测试 setup/copy_forward.py：在临时文件夹里搭一个小项目，抄对了它不作声，抄错了它指得出是哪一行。"""

import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[1] / "copy_forward.py"
UTF8 = os.environ | {"PYTHONIOENCODING": "utf-8"}

SOURCE = '''"""原处。"""

import torch

SIZES = {
    "small": 12,  # 为什么是 12

    "large": 48,
}


class Scale(torch.nn.Module):
    """把输入放大几倍。

    这一段只留在原处。

    参数:
        times (int): 几倍
    """

    def __init__(self, times):
        super().__init__()

        # 整行注释不抄
        self.times = times  # 行尾注释也不抄

    @property
    def name(self):
        """方法的文档不抄。"""
        return "#不是注释"

    def forward(self, x):
        """方法的文档不抄。

        它可以有几行。
        """
        x = x.flatten()  # (n,)　形状后面的话不抄

        return x * self.times  # (b, t) → (n,)


def template():
    """一段有空行的文字。"""
    text = """第一行

第三行
    def 缩进的行  # 不是注释
    最后一行"""
    return text


@torch.no_grad()
def frozen():
    """带装饰器的函数，装饰器也要抄。"""
    return torch.ones(2).unsqueeze(0)  # (1, 2)


class Empty:
    """方法里只有文档的类。"""

    def nothing(self):
        """什么也不做。

        这一段不抄。
        """
'''

# SOURCE 里的组件抄出来应当是这样；这里是手写的，不是用工具生成的。
SCALE = '''class Scale(torch.nn.Module):
    """把输入放大几倍。（详解见 ch02/main/source.py）"""

    def __init__(self, times):
        super().__init__()
        self.times = times

    @property
    def name(self):
        return "#不是注释"

    def forward(self, x):
        x = x.flatten()  # (n,)
        return x * self.times  # (b, t) → (n,)
'''
SIZES = '''SIZES = {
    "small": 12,
    "large": 48,
}
'''
TEMPLATE = '''def template():
    """一段有空行的文字。（详解见 ch02/main/source.py）"""
    text = """第一行

第三行
    def 缩进的行  # 不是注释
    最后一行"""
    return text
'''
FROZEN = '''@torch.no_grad()
def frozen():
    """带装饰器的函数，装饰器也要抄。（详解见 ch02/main/source.py）"""
    return torch.ones(2).unsqueeze(0)  # (1, 2)
'''
EMPTY = '''class Empty:
    """方法里只有文档的类。（详解见 ch02/main/source.py）"""

    def nothing(self):
        """什么也不做。"""
'''


def region(kind, names, body, source="ch02/main/source.py"):
    """写出一个折叠区。

    参数:
        kind (str): 沿用或改写
        names (str): 组件名
        body (str): 里面的代码
        source (str): 原处

    返回:
        str: 从 region 到 endregion，共几行
    """
    return f"# region {kind} {source}: {names}\n{body}# endregion\n"


@pytest.fixture
def project(tmp_path):
    """一个小项目：原处 ch02/main/source.py，和沿用、改写它的 ch03/main/user.py。"""
    for folder in ("setup", "ch02/main", "ch03/main"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(TOOL, tmp_path / "setup")
    (tmp_path / "ch02/main/source.py").write_text(SOURCE, encoding="utf-8")
    return tmp_path


def run(project, *arguments):
    """在小项目里运行工具。

    参数:
        project (Path): 小项目
        arguments (str): 命令行参数

    返回:
        CompletedProcess: 退出码和输出
    """
    command = [sys.executable, project / "setup" / "copy_forward.py", *arguments]
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=UTF8, cwd=project)


def user(project, text, name="user"):
    """写一个使用者脚本。

    参数:
        project (Path): 小项目
        text (str): 内容
        name (str): 脚本名

    返回:
        Path: 它的路径
    """
    path = project / "ch03" / "main" / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    return path


def problem(project, text, where=1):
    """写一个有一处问题的脚本，确认 check 恰好报一条、行号对。

    参数:
        project (Path): 小项目
        text (str): 脚本内容
        where (int 或 str): 应报的行号，或那一行里的文字

    返回:
        str: 报出的说明
    """
    user(project, text)
    if isinstance(where, str):
        where = next(number for number, line in enumerate(text.splitlines(), start=1) if where in line)
    result = run(project, "check")
    assert result.returncode == 1 and result.stderr == "" and result.stdout.count("\n") == 1, result.stdout + result.stderr
    head, message = result.stdout.strip().split("　", 1)
    assert head == f"{Path('ch03/main/user.py')}:{where}"
    return message


@pytest.mark.parametrize("names, body", [("Scale", SCALE), ("SIZES", SIZES), ("template", TEMPLATE), ("frozen", FROZEN), ("Empty", EMPTY), ("Scale, Empty", f"{SCALE}\n\n{EMPTY}")])
def test_copy_is_shortened(project, names, body):
    gap = "" if names == "SIZES" else "\n\n"  # 类和函数后面空两行
    path = user(project, "import torch\n\n" + region("沿用", names, "") + "\nprint(1)\n")
    assert run(project, "check").returncode == 1
    result = run(project, "write")
    assert result.returncode == 0 and "ch03" in result.stdout
    assert path.read_text(encoding="utf-8") == "import torch\n\n" + region("沿用", names, body + gap) + "\nprint(1)\n"
    assert run(project, "check").returncode == 0
    subprocess.run([sys.executable, "-c", f"compile(open({str(path)!r}, encoding='utf-8').read(), 'user', 'exec')"], check=True)


def test_write_is_idempotent(project):
    path = user(project, region("沿用", "SIZES", "") + region("沿用", "Scale", "旧的代码\n\n\n") + region("改写", "Empty", EMPTY.replace("nothing", "anything")))
    before = path.read_text(encoding="utf-8")
    assert "user.py" in run(project, "write").stdout
    after = path.read_text(encoding="utf-8")
    assert SCALE in after and "旧的代码" not in after and after != before
    assert EMPTY.replace("nothing", "anything") in after  # 改写区不动
    time_written = path.stat().st_mtime_ns
    assert run(project, "write").stdout.strip() == "所有沿用区都已是最新"
    assert path.read_text(encoding="utf-8") == after and path.stat().st_mtime_ns == time_written


def test_check_accepts_good_tree(project):
    changed = SCALE.replace("x * self.times  # (b, t) → (n,)", "x / self.times  # 改：除而不是乘")
    user(project, region("沿用", "Scale, Empty", f"{SCALE}\n\n{EMPTY}\n\n") + region("改写", "Scale", changed))
    result = run(project, "check")
    assert result.returncode == 0 and "没有问题（3 个脚本）" in result.stdout


def test_edited_copy(project):
    assert "不一致" in problem(project, "import torch\n" + region("沿用", "Scale", SCALE.replace("x.flatten()", "x.clone()")), 2)
    assert run(project, "write").returncode == 0
    assert run(project, "check").returncode == 0


def test_changed_source(project):
    text = region("沿用", "Scale", SCALE)
    source = project / "ch02/main/source.py"
    source.write_text(SOURCE.replace("x * self.times", "x + self.times"), encoding="utf-8")
    assert "不一致" in problem(project, text)
    assert run(project, "write").returncode == 0
    assert "x + self.times" in (project / "ch03/main/user.py").read_text(encoding="utf-8")
    # 只改了原处的讲解，抄写不变，就不算变。
    source.write_text(SOURCE.replace("x * self.times", "x + self.times").replace("整行注释不抄", "换一种说法"), encoding="utf-8")
    assert run(project, "check").returncode == 0


@pytest.mark.parametrize("kind", ["沿用", "改写"])
def test_missing_source_and_component(project, kind):
    assert "原处 ch02/main/gone.py 不存在" in problem(project, region(kind, "Scale", SCALE, "ch02/main/gone.py"))
    assert "没有 Gone" in problem(project, region(kind, "Gone", SCALE))
    assert run(project, "write").returncode == (2 if kind == "沿用" else 0)


def test_unpaired_regions(project):
    start = "# region 沿用 ch02/main/source.py: Scale\n"
    assert "没有配对的 endregion" in problem(project, f"x = 1\n{start}{SCALE}", 2)
    assert "还没有 endregion" in problem(project, f"{start}x = 1\n{region('沿用', 'SIZES', SIZES)}# endregion\n", 3)
    assert "前面没有 region" in problem(project, f"x = 1\n{region('沿用', 'SIZES', SIZES)}# endregion\n", 8)
    for command in ("write", "tree"):
        result = run(project, command)
        assert result.returncode == 2 and result.stderr.startswith("出错了：") and result.stderr.count("\n") == 1


@pytest.mark.parametrize("header", ["# region 抄写 ch02/main/source.py: Scale", "# region 沿用 ch02/main/source.py Scale", "# region 沿用（不含注释） ch02/main/source.py: Scale", "# region 画图"])
def test_malformed_header(project, header):
    assert "格式应为" in problem(project, f"{header}\n{SCALE}# endregion\n")


# ── 原处写成文件夹；沿用（含注释） ──


@pytest.fixture
def walkthroughs(project):
    """ch02/main 里有两个逐步讲解，各讲一个组件；source.py 不是逐步讲解，不会去找。"""
    code = (project / "ch02/main/source.py").read_text(encoding="utf-8")
    (project / "ch02/main/example_01_one.py").write_text("# %% 一格\nx = 1\n\n\n# 先说一句，属于它\ndef one():\n    \"\"\"一。\n\n    返回:\n        int: 一\n    \"\"\"\n    # 为什么是 1\n    return 1\n\n\nprint(one())\n", encoding="utf-8")
    (project / "ch02/main/example_02_two.py").write_text(region("沿用", "one", "", "ch02/main") + 'def two():\n    """二。"""\n    return one() + 1\n', encoding="utf-8")
    assert "def one" not in code
    return project


def test_folder_finds_each_home(walkthroughs):
    path = user(walkthroughs, region("沿用", "one, two", "", "ch02/main"))
    assert run(walkthroughs, "write").returncode == 0
    text = path.read_text(encoding="utf-8")
    assert "（详解见 ch02/main/example_01_one.py）" in text and "（详解见 ch02/main/example_02_two.py）" in text and "为什么是 1" not in text
    assert run(walkthroughs, "check").returncode == 0
    lines = run(walkthroughs, "tree").stdout.splitlines()
    assert "one（ch02/main/example_01_one.py）" in lines and "two（ch02/main/example_02_two.py）" in lines


def test_whole_copy_keeps_comments(walkthroughs):
    path = user(walkthroughs, region("沿用（含注释）", "one", "", "ch02/main"))
    assert run(walkthroughs, "check").returncode == 1 and run(walkthroughs, "write").returncode == 0
    text = path.read_text(encoding="utf-8")
    assert "# 先说一句，属于它\ndef one" in text and "        int: 一" in text and "    # 为什么是 1\n" in text and "详解见" not in text
    assert run(walkthroughs, "check").returncode == 0
    path.write_text(text.replace("# 为什么是 1", "# 改过"), encoding="utf-8")
    assert run(walkthroughs, "check").returncode == 1


def test_folder_without_or_with_two_homes(walkthroughs):
    run(walkthroughs, "write")
    assert "里没有 gone" in problem(walkthroughs, region("沿用", "gone", "", "ch02/main"))
    assert "原处 ch09/main 不存在" in problem(walkthroughs, region("沿用", "one", "", "ch09/main"))
    (walkthroughs / "ch02/main/example_03_again.py").write_text('def two():\n    """又一个。"""\n', encoding="utf-8")
    assert "不止一处" in problem(walkthroughs, region("沿用", "two", "", "ch02/main"))


def test_named_files_only(walkthroughs):
    other = user(walkthroughs, region("沿用", "Scale", ""), "other")
    path = user(walkthroughs, region("沿用", "two", "", "ch02/main"))
    assert run(walkthroughs, "write", str(path)).returncode == 0 and run(walkthroughs, "check", str(path)).returncode == 0
    assert "def two" in path.read_text(encoding="utf-8") and "class Scale" not in other.read_text(encoding="utf-8")
    assert run(walkthroughs, "check").returncode == 1
    assert run(walkthroughs, "check", "nowhere.py").returncode == 2


def test_region_names_a_copy(project):
    user(project, region("沿用", "Scale", f"{SCALE}\n\n"), "first")
    assert "也是抄来的" in problem(project, region("沿用", "Scale", SCALE, "ch03/main/first.py"))
    user(project, region("改写", "Scale", SCALE.replace("x * self.times  # (b, t) → (n,)", "x  # 改：不放大")), "first")
    assert "也是抄来的" in problem(project, region("沿用", "Scale", SCALE, "ch03/main/first.py"))


def test_syntax_error(project):
    assert "语法错误" in problem(project, region("改写", "Scale", SCALE.replace("x * self.times", "x *")), "x *")
    (project / "ch02/main/source.py").write_text(SOURCE + "x = (\n", encoding="utf-8")
    assert "ch02/main/source.py 第 " in problem(project, region("沿用", "Scale", SCALE))
    result = run(project, "write")
    assert result.returncode == 2 and "语法错误" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "old, new, where",
    [
        ("x = x.flatten()", "x = x.clone()", "x.clone()"),  # 改一行
        ("        self.times = times\n", "        self.times = times\n        self.more = 1\n", "self.more"),  # 加一行
        ("        x = x.flatten()  # (n,)\n", "", "return x *"),  # 删一行：报在删除处的下一行
        ("        return x * self.times  # (b, t) → (n,)\n", "", "# endregion"),  # 删最后一行
        ("self.times = times", "self.times = 2  # 两倍就够了", "两倍就够了"),  # 有注释，但不是"改："
    ],
)
def test_change_without_reason(project, old, new, where):
    text = region("改写", "Scale", SCALE.replace(old, new))
    number = next(number for number, line in enumerate(text.splitlines(), start=1) if where in line)
    assert "改动没有说明" in problem(project, text, number - (where == "# endregion"))
    # 折叠区开头空一行，行号也要对。
    assert "改动没有说明" in problem(project, text.replace("\nclass", "\n\nclass", 1), number + 1 - (where == "# endregion"))


@pytest.mark.parametrize(
    "old, new",
    [
        ("x = x.flatten()  # (n,)", "x = x.clone()  # 改：不变形"),
        ("        x = x.flatten()  # (n,)\n", "        # 改：不变形\n        x = x.clone()\n"),
        ("        x = x.flatten()  # (n,)\n", "        # 改：不变形，所以删去一行\n"),
        ("times):\n        super().__init__()\n", "times):  # 改：用不到父类\n"),
        ("        return x * self.times  # (b, t) → (n,)\n", "        # 改：删去最后一行\n"),
        ("        self.times = times\n", "        self.times = times\n        self.more = 1  # 改：多留一个数\n"),
    ],
)
def test_change_with_reason(project, old, new):
    assert SCALE.count(old) == 1
    user(project, region("改写", "Scale", SCALE.replace(old, new)))
    result = run(project, "check")
    assert result.returncode == 0, result.stdout


def test_adapted_but_identical(project):
    assert "应写成沿用" in problem(project, region("改写", "Scale", SCALE))
    # 只改文档和注释，代码没变，也算相同。
    assert "应写成沿用" in problem(project, region("改写", "Scale", SCALE.replace("把输入放大几倍。", "换一句话。").replace("(n,)", "改：换个注释")))


def test_adapted_lacks_component(project):
    assert "改写区里没有 Empty" in problem(project, region("改写", "Scale, Empty", f"# 改：Empty 用不到，删去\n{SCALE}# 改：Empty 用不到，删去\n"))


def test_failed_write_changes_nothing(project):
    good = user(project, region("沿用", "Scale", ""), "a_first")
    user(project, region("沿用", "Gone", ""), "z_last")
    assert run(project, "write").returncode == 2
    assert good.read_text(encoding="utf-8") == region("沿用", "Scale", "")


def test_tree(project):
    user(project, region("沿用", "Scale", SCALE) + region("改写", "Empty", EMPTY))
    (project / "ch03/tests").mkdir()
    (project / "ch03/tests/test_user.py").write_text(region("沿用", "Gone", ""), encoding="utf-8")  # 测试不参与检查
    result = run(project, "tree")
    assert result.returncode == 0
    users = Path("ch03/main/user.py")
    assert result.stdout.splitlines() == ["Empty（ch02/main/source.py）", f"    改写　{users}", "Scale（ch02/main/source.py）", f"    沿用　{users}"]


def test_diff(project):
    path = user(project, region("沿用", "Empty", EMPTY) + region("改写", "Scale", SCALE.replace("x * self.times  # (b, t) → (n,)", "x  # 改：不放大")))
    result = run(project, "diff", str(path))
    assert result.returncode == 0
    changed = [line for line in result.stdout.splitlines() if line[:1] in ("+", "-")]
    assert changed == ["-        return x * self.times  # (b, t) → (n,)", "+        return x  # 改：不放大"]
    assert "\033" not in result.stdout  # 输出到文件或管道时不带颜色
    plain = user(project, region("沿用", "Empty", EMPTY), "plain")
    result = run(project, "diff", str(plain))
    assert result.returncode == 2 and result.stderr == "出错了：plain.py 里没有改写区\n"


@pytest.mark.parametrize("arguments", [["nope"], ["check", "多余"], ["diff"], ["diff", "没有的文件.py"], ["write", "--all"]])
def test_bad_usage(project, arguments):
    result = run(project, *arguments)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("出错了：") and result.stderr.count("\n") == 1 and "用法" in result.stderr


def test_help(project):
    for arguments in ([], ["--help"], ["-h"]):
        result = run(project, *arguments)
        assert result.returncode == 0 and "copy_forward.py write" in result.stdout


def test_real_tree():
    """机器有快有慢，所以不限秒数，只与这台机器把这些脚本解析一遍（ast.parse）的 CPU 时间比。"""
    def cpu(*command):
        before = os.times()
        result = subprocess.run([sys.executable, *command], cwd=TOOL.parents[1], capture_output=True, encoding="utf-8", env=UTF8)
        after = os.times()
        assert result.returncode == 0, f"运行 setup/copy_forward.py write 之后再看：\n{result.stdout}"
        return after.children_user + after.children_system - before.children_user - before.children_system

    parsing = "import ast, pathlib\nfor path in pathlib.Path('.').glob('[!.]*/*/*.py'):\n    ast.parse(path.read_bytes())"
    assert min(cpu(TOOL, "check") for _ in range(2)) < 3 * min(cpu("-c", parsing) for _ in range(2))


HARD = r'''"""文档 # 不是注释 \""" 还没完"""
a = "#" + '"#' + r"\#" + b'\'#'.decode()  # 是 "注释"
b = f"{a!r:#>9}" "\
#" ""  # 也是 \' 注释

c = """'

# 不是""" + '"""'  # (b, t)
'''


def test_comments_equal_tokenize():
    """用正则表达式找注释，快，但要与 Python 自己的 tokenize 找到的完全相同：所有脚本，再加一段专门刁难的。"""
    modules = {}
    for tool in (TOOL, TOOL.parent / "checks" / "comments.py"):
        spec = importlib.util.spec_from_file_location(tool.stem, tool)
        modules[tool.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(modules[tool.stem])
    assert modules["copy_forward"].LITERAL == modules["comments"].LITERAL
    paths = TOOL.parents[1].glob("[acs]*/**/*.py")
    for text in [HARD, *(path.read_text(encoding="utf-8") for path in paths)]:
        starts, inside = {}, set()
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                starts[token.start[0]] = token.start[1]
            elif token.end[0] > token.start[0]:
                inside.update(range(token.start[0] + 1, token.end[0] + 1))
        _, comments, strings = modules["copy_forward"].parse(text)
        assert ({line: column for line, (column, _) in comments.items()}, strings) == (starts, inside)
