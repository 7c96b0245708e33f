"""测试 setup/checks/comments.py：一个合格的小脚本，每次只弄坏一处，看它是否只报这一条、行号对不对。"""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SETUP = Path(__file__).resolve().parents[1]
TOOL = SETUP / "checks" / "comments.py"
STANDARDS = SETUP.parent / "CODING_STANDARDS.md"
UTF8 = os.environ | {"PYTHONIOENCODING": "utf-8"}

# 合格的样本：各种规则都用到，也都守住了。
CLEAN = '''"""第 3 章 · 演示　一个合格的小脚本

运行：
    python demo.py --text 我的文章.txt
"""

import torch
import torch.nn as nn

# 例句是 "Your journey starts with one step"，比例取 3:4，见 https://example.com/a?b=1 这一页。
WORDS = ["Your", "journey"]  # noqa: E501


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """打印一条自查结果(抄来的,不查)。"""
    print(claim, ok, hint)
    return ok


# endregion


# region 改写 ch03/main/other.py: Halve
class Halve(nn.Module):
    """改写区里的组件，文档可以只有一句。"""

    def forward(self, x):
        return x / 3  # 改：除以 3 而不是 2


# endregion


class Mixer(nn.Module):
    """把各行加权混合，困惑度是 exp(损失)。

    参数:
        d_in (int): 输入维度；
            写不下就换行: 缩进深的是上一行的继续
        bias: 有没有偏置

    形状:
        输入 (b, t, d) → 输出 (b, t, d)，公式 y = (x − 均值) / √(方差 + eps)

    异常:
        ValueError: 维度不是正数

    示例:
        >>> Mixer(3)  # 示例里写代码(标点,不查)
        得到 (输出,原样)

    出处: 原书 3.3 节
    """

    def __init__(self, d_in, *, bias=False):
        super().__init__()
        if d_in < 1:
            raise ValueError("维度必须是正数")

        def even(size):
            if size % 2:
                raise TypeError("只在里面的小函数里抛出，外面不必写")
            return size

        self.layer = nn.Linear(d_in, d_in, bias=bias)
        self.even = even

    def forward(self, x):
        """前向传播。

        参数:
            x (Tensor): 输入，(b, t, d)

        形状:
            (b, t, d)
        """
        # 代码写在反引号里：`f(甲,乙)` 与 `a:乙` 都可以。
        b, t, d = x.shape

        def scale(y):
            return y / d**0.5

        scores = scale(x @ x.transpose(1, 2))
        weights = torch.softmax(scores.view(b, t, t), dim=-1)  # (b, t, t)　每一行加起来是 1
        return weights @ x  # (b, t, d)


def batches(path, *names, size=2):
    """一批一批地给出名字。

    参数:
        path (str 或 Path): 文件
        names (str): 名字
        size (int): 每批几个

    返回:
        Iterator[tuple]: 每批一个
    """
    for start in range(0, len(names), size):
        yield path, names[start : start + size]


def main():
    """演示一遍。"""
    x = torch.ones(1, 2, 3)
    pair = torch.stack([x, x])  # 两份一样的
    print(pair.shape)
    numbers = x.squeeze(0).tolist()
    same = torch.equal(x.flatten(), x.view(-1))
    total = (x @ x.transpose(1, 2)).sum()
    loss = nn.functional.cross_entropy(x.flatten(0, 1), x.flatten(0, 1))
    large = x.reshape(-1).max().item() > 1
    size = x.reshape(-1).shape
    print(x.reshape(-1), numbers, same, total, loss, large, size)
    confirm("形状不变", Mixer(3)(x).view(-1).shape == (6,), "变形写错了")


if __name__ == "__main__":
    main()
'''


def run(*arguments):
    """运行检查。

    参数:
        arguments (str 或 Path): 命令行参数

    返回:
        CompletedProcess: 退出码和输出
    """
    return subprocess.run([sys.executable, TOOL, *map(str, arguments)], capture_output=True, encoding="utf-8", env=UTF8)


def problems(folder, text, kind="main"):
    """把文本写成脚本，检查它。

    参数:
        folder (Path): 临时文件夹
        text (str): 脚本内容
        kind (str): 放在哪种文件夹里

    返回:
        list[tuple[int, str]]: 每个问题的行号和规则
    """
    path = folder / kind / "demo.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    result = run(path)
    assert result.stderr == "" and result.returncode in (0, 1)
    found = [line.removeprefix(f"{path}:").split("　", 1) for line in result.stdout.splitlines() if line.startswith(str(path))]
    assert bool(found) == (result.returncode == 1)
    return [(int(number), rest.split("：")[0]) for number, rest in found]


# 每项：规则，换掉什么（恰好出现一次），换成什么，应当报在哪一行（这段文字开始的地方；None 表示就在换上的那一行）。
BROKEN = [
    ("文档", CLEAN[: CLEAN.index("import torch\n")], "", "import torch\n"),
    ("文档", CLEAN[: CLEAN.index("import torch\n")], '"""A demo."""\n', None),
    ("文档", '    """演示一遍。"""\n', "", "def main"),
    ("文档", '"""演示一遍。"""', '"""Run the demo."""', "def main"),
    ("文档", "def batches(", "class Empty:\n    size = 1\n\n\ndef batches(", "class Empty"),
    ("文档", "# region 改写 ch03/main/other.py: Halve\n", "# region\n", "    def forward(self, x):\n        return x / 3"),
    ("文档", "    def __init__(self, d_in, *, bias=False):", "    def _hidden(self):\n        pass\n\n    def __init__(self, d_in, *, bias=False):", None),
    ("参数", "        size (int): 每批几个\n", "", "def batches"),
    ("参数", "        path (str 或 Path): 文件\n", "", "def batches"),
    ("参数", "        names (str): 名字\n", "", "def batches"),
    ("参数", "        bias: 有没有偏置\n", "", "    def __init__"),
    ("参数", "        size (int): 每批几个\n", "        size (int): 每批几个\n        gone (int): 早就删掉了\n", "def batches"),
    ("参数", "def main():", "def main(config):", None),
    ("返回", "    返回:\n        Iterator[tuple]: 每批一个\n", "", "def batches"),
    ("返回", "        形状:\n            (b, t, d)\n", "", '    def forward(self, x):\n        """前向'),
    ("异常", "    异常:\n        ValueError: 维度不是正数\n\n", "", "            raise ValueError"),
    ("异常", "        ValueError: 维度不是正数", "        TypeError: 维度不是正数", "            raise ValueError"),
    ("异常", "        ValueError: 维度不是正数", "        TypeError: 类型不对\n\n    另起一段提到 ValueError，不算写进了异常。", "            raise ValueError"),
    ("形状", "        return weights @ x  # (b, t, d)", "        return weights @ x", None),
    ("形状", "return y / d**0.5", "return y.unsqueeze(0) / d**0.5", None),
    ("形状", "return x / 3  # 改：", "return x.flatten() / 3  # 改：", None),
    ("形状", "    return ok\n", "    return ok.view(1)\n", None),
    ("形状", "    print(pair.shape)\n", "", "    pair = torch.stack"),
    ("形状", "numbers = x.squeeze(0).tolist()", "numbers = x.squeeze(0)", None),
    ("形状", "total = (x @ x.transpose(1, 2)).sum()", "total = (x @ x.transpose(1, 2)).sum(dim=0)", None),
    ("形状", "  # (b, t, t)　每一行加起来是 1", "  # ( 见下一行 ) 每一行加起来是 1", None),
    ("英文注释", "  # 改：除以 3 而不是 2", "  # divide by three", None),
    ("标点", '"""演示一遍。"""', '"""演示一遍,再演示一遍。"""', None),
    ("标点", '"""改写区里的组件，文档可以只有一句。"""', '"""改写区里的组件，文档可以(只有)一句。"""', None),
    ("标点", "        names (str): 名字\n", "        names (str): 名字;可以很多\n", None),
    ("标点", "        得到 (输出,原样)\n\n", "        得到 (输出,原样)\n\n    示例之后另起一段(标点要查)。\n\n", "    示例之后"),
    ("标点", "    出处: 原书 3.3 节", "    出处: 原书 3.3 节(第一段)", None),
]


@pytest.mark.parametrize("rule, old, new, mark", BROKEN)
def test_each_rule(tmp_path, rule, old, new, mark):
    assert CLEAN.count(old) == 1
    text, mark = CLEAN.replace(old, new), mark or new
    assert text.count(mark) == 1
    assert problems(tmp_path, text) == [(text[: text.index(mark)].count("\n") + 1, rule)]


@pytest.mark.parametrize("call", ["view(-1)", "reshape(-1)", "transpose(0, 1)", "permute(1, 0)", "unfold(0, 2, 1)", "unsqueeze(0)", "squeeze()", "flatten()", "expand(2, 3)"])
def test_every_reshaping_call(tmp_path, call):
    start = '"""演示：变形。"""\n\nimport torch\n\nx = torch.ones(2, 3)\n'
    assert problems(tmp_path, f"{start}y = x.{call}\n") == [(6, "形状")]
    assert problems(tmp_path, f"{start}y = x.{call}  # (n,)\n") == []
    assert problems(tmp_path, f"{start}y = x.{call}\nprint(y.shape)\n") == []
    assert problems(tmp_path, f"{start}y = x.{call}\nassert y.shape\nprint(x.shape)\n") == [(6, "形状")]
    assert problems(tmp_path, f"{start}y = x.{call}\n" + "\n" * 8 + "print(y.shape)\n") == [(6, "形状")]  # 隔得太远
    assert problems(tmp_path, f"{start}y = x.{call}\n", "setup") == []


def test_shape_on_long_statement(tmp_path):
    start = '"""演示：一句话占几行。"""\n\nimport torch\n\nx = torch.ones(2, 3)\n'
    assert problems(tmp_path, f"{start}y = torch.cat(\n    [x, x],\n    dim=0,\n)  # (n, d)\n") == []
    assert problems(tmp_path, f"{start}y = torch.cat(  # (n, d)\n    [x, x],\n    dim=0,\n)\n") == []
    assert problems(tmp_path, f"{start}y = torch.cat(\n    [x, x],\n    dim=0,\n)\n") == [(6, "形状")]


@pytest.mark.parametrize("mark", list(",;:?!()"))
def test_every_punctuation(tmp_path, mark):
    start = '"""演示：标点。"""\n\n'
    assert problems(tmp_path, f"{start}# 汉字{mark} x\n") == [(3, "标点")]
    assert problems(tmp_path, f"{start}# x {mark}汉字\n") == [(3, "标点")]
    assert problems(tmp_path, f"{start}# 汉字 {mark} 汉字，x{mark}y\n") == []
    assert problems(tmp_path, f"{start}TEXT = '汉字{mark}汉字'\n") == []


@pytest.mark.parametrize("comment", ["# 汉字.", "# 汉字. 汉字"])
def test_half_width_period(tmp_path, comment):
    assert problems(tmp_path, f'"""演示：句号。"""\n\nX = 1  {comment}\n') == [(3, "标点")]


@pytest.mark.parametrize(
    "comment",
    ["# journey", '# "Every effort moves you"', "# (b, t, d) (b, d, t)", "# %% the first cell here", "# noqa: this is fine", "# type: ignore this one", "# Attention(Q, K, V) = softmax(QKᵀ / √k) V", "# https://a.org/of the-book", "# 这里用 the whole data set 来训练"],
)
def test_english_allowed(tmp_path, comment):
    assert problems(tmp_path, f'"""演示：英文注释。"""\n\nX = 1  {comment}\n') == []


def test_comment_share(tmp_path):
    code = "".join(f"x{number} = {number}\n" for number in range(20))
    document = '"""演示：注释量。"""\n\n'
    assert problems(tmp_path, document + code) == [(1, "注释量")]
    assert problems(tmp_path, document + code + "# 讲一句\n" * 9) == []  # (9 + 1) / 20 = 0.5
    assert problems(tmp_path, document + code + "# 讲一句\n" * 8) == [(1, "注释量")]
    assert problems(tmp_path, document + code + "# 讲一句\n" * 26) == [(1, "注释量")]  # 27 / 20 > 1.3
    assert problems(tmp_path, document + code + "# 讲一句\n" * 26, "setup") == []  # 工具不设上限
    assert problems(tmp_path, document + code + "# 讲一句\n" * 4, "experiments") == []  # 5 / 20 = 0.25
    assert problems(tmp_path, document + code + "# 讲一句\n" * 3, "experiments") == [(1, "注释量")]
    # region、endregion 两行不算注释。
    assert problems(tmp_path, document + code + "# 讲一句\n" * 8 + "# region 改写 setup/a.py: b\n# endregion\n") == [(1, "注释量")]
    # 沿用区不算：里面没有注释的代码不拉低比例，里面的注释也不抬高。
    region = "# region 沿用 setup/a.py: b\n{}# endregion\n"
    assert problems(tmp_path, document + code + "# 讲一句\n" * 9 + region.format(code)) == []
    assert problems(tmp_path, document + code + region.format("# 讲一句\n" * 9)) == [(1, "注释量")]
    assert problems(tmp_path, document + code + region.format('def b():\n    """一句。\n' + "    又一句。\n" * 9 + '    """\n')) == [(1, "注释量")]


def test_all_problems_in_order(tmp_path):
    text = CLEAN.replace('"""演示一遍。"""', '"""Run."""').replace("  # 改：除以 3 而不是 2", "  # divide by three").replace("  # 两份一样的", "  # 两份一样的.")
    found = problems(tmp_path, text)
    assert [rule for _, rule in found] == ["英文注释", "文档", "标点"] and found == sorted(found)


def test_syntax_error(tmp_path):
    assert problems(tmp_path, '"""演示：语法。"""\n\nx = (\n') == [(3, "语法")]


def test_stats(tmp_path):
    problems(tmp_path, CLEAN)
    result = run("--stats", tmp_path / "main" / "demo.py")
    header, row = result.stdout.splitlines()
    assert result.returncode == 0 and "注释比" in header and row.endswith("demo.py")
    code, comments, docs, share, functions = row.split()[:5]
    assert float(share) == pytest.approx((int(comments) + int(docs)) / int(code), abs=0.006)
    assert functions == "3/3"  # forward、batches、main；沿用区、改写区和 __init__ 不算
    problems(tmp_path, CLEAN.replace('    """演示一遍。"""\n', ""))
    assert run("--stats", tmp_path / "main" / "demo.py").stdout.split()[-2] == "2/3"


@pytest.mark.parametrize("arguments", [["--nope"], ["没有的文件.py"], [str(Path(__file__).parent)], [str(SETUP.parent / ".gitignore")]])
def test_bad_usage(arguments):
    result = run(*arguments)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("出错了：") and result.stderr.count("\n") == 1 and arguments[0] in result.stderr


def test_help():
    result = run("--help")
    assert result.returncode == 0 and "--stats" in result.stdout


def test_several_files(tmp_path):
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text('"""合格。"""\n', encoding="utf-8")
    bad.write_text("x = 1\n", encoding="utf-8")
    result = run(good, bad)
    assert result.returncode == 1 and result.stdout.startswith(f"{bad}:1　文档：") and result.stdout.count("\n") == 1
    assert "没有问题（2 个脚本）" in run(good, good).stdout


def test_templates_in_standards(tmp_path):
    """规范里的三个模板照着抄：填满折叠区之后，能通过检查，也能运行。"""
    shutil.copytree(SETUP, tmp_path / "setup", ignore=lambda folder, names: [name for name in names if not name.endswith((".py", "checks")) or name == "check_data.py"])  # 它沿用第 6、7 章的组件
    found = re.findall(r"`chNN/((?:main|experiments)/\w+\.py)`\n\n```python\n(.*?)```", STANDARDS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(found) == 3
    paths = [tmp_path / "ch09" / name for name, _ in found]
    for path, (_, code) in zip(paths, found):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code.replace("chNN", "ch09"), encoding="utf-8")
    subprocess.run([sys.executable, tmp_path / "setup" / "copy_forward.py", "write"], check=True, env=UTF8)
    assert run(*paths).returncode == 0
    for path in paths:
        result = subprocess.run([sys.executable, path], capture_output=True, encoding="utf-8", env=UTF8)
        assert result.returncode == 0 and "✓" in result.stdout and "✗" not in result.stdout, result.stderr


def test_standards_say_the_same(tmp_path):
    """规范里写的注释比范围、算变形的方法，与检查用的相同。"""
    text, source = STANDARDS.read_text(encoding="utf-8"), TOOL.read_text(encoding="utf-8")
    values = {node.targets[0].id: ast.unparse(node.value) for node in ast.parse(source).body if isinstance(node, ast.Assign)}
    for kind, low, high in re.findall(r"'(main|experiments)': \(([\d.]+), ([\d.]+)\)", values["BANDS"]):
        assert f"`{kind}/` {low}–{high}" in text
    assert all(f"`{name}`" in text for name in ast.literal_eval(values["RESHAPING"]))


def test_whole_project():
    result = run()
    assert result.returncode == 0, f"有脚本不合规范：\n{result.stdout}"


def test_fast_enough():
    """机器有快有慢，所以不限秒数，只与这台机器把这些脚本解析一遍（ast.parse）的 CPU 时间比。"""
    def cpu(*command):
        before = os.times()
        subprocess.run([sys.executable, *command], cwd=STANDARDS.parent, capture_output=True, check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    parsing = "import ast, pathlib\nfor path in pathlib.Path('.').glob('[!.]*/*/*.py'):\n    ast.parse(path.read_bytes())"
    assert min(cpu(TOOL) for _ in range(2)) < 4 * min(cpu("-c", parsing) for _ in range(2))
