"""测试 setup/checks/shapes.py：一个形状都写对的小脚本，每次只写错一处，看它是否找得到、行号对不对；再查全项目的脚本。

运行：python -m pytest setup/tests/test_shapes.py -n 2
全项目的脚本各是一个测试，新写的脚本自动加入；它们的结果放在一处，最后一个测试数一数总共查了多少条。
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SETUP = Path(__file__).resolve().parents[1]
TOOL = SETUP / "checks" / "shapes.py"


def load():
    """按路径导入 shapes.py。"""
    spec = importlib.util.spec_from_file_location("shapes", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


shapes = load()
SCRIPTS = [path for path in shapes.comments.scripts() if "setup" not in path.parts]

# 形状都写对的样本：各种写法都用到。用 numpy 而不用 torch，一次只要半秒。
CLEAN = '''"""第 3 章 · 演示　形状都写对的小脚本

形状记号（全书统一）：b 批大小　t 序列长度　d 嵌入维度　h 头数　k 每个头的维度（k = d / h）　n 样本数
"""

import numpy as np

SETTINGS = [(4, 4), (2, 2)]  # (max_length, stride)：这不是形状
HALF = (3 + 1) / 2  # (3 + 1) / 2 是公式
points = np.zeros((5, 2))  # (n, 2) = (5, 2)
left, right = points[:3], points[3:]  # (3, 2)，(2, 2)
total = points.sum()  # ()
thirds = [points, points * 2, points * 3]  # 三个 (n, 2)
each = {"a": points, "b": points[:3]}  # 各 (m, 2)
same = [points, points]  # 都是 (n, 2)


class Attention:
    """注意力的样子。

    形状:
        输入 (b, t, d_in) → 输出 (b, t, d_out)
        mask (8, 8)
    """

    def __init__(self, d_in, d_out, num_heads):
        self.d_out, self.num_heads, self.head_dim = d_out, num_heads, d_out // num_heads
        self.W_query = np.zeros((d_in, d_out))  # (d_in, d_out)
        self.mask = np.ones((8, 8))  # (8, 8)

    def forward(self, x):
        """前向传播。

        参数:
            x (Tensor): 输入，(b, t, d_in)

        返回:
            Tensor: 上下文向量，(b, t, d_out)
        """
        b, t, d_in = x.shape
        queries = x @ self.W_query  # (b, t, d_out)
        queries += 1  # (b, t, d_out)
        heads = queries.reshape(b, t, self.num_heads, self.head_dim).transpose(0, 2, 1, 3)  # (b, t, d_out) → (b, h, t, k)
        scores = heads @ heads.transpose(0, 1, 3, 2)  # (b, h, t, t)
        top = scores.max(axis=-1, keepdims=True)  # (…, 1)　留着最后一维
        merged = (
            (scores @ heads)  # (b, h, t, k)
            .transpose(0, 2, 1, 3)  # (b, t, h, k)
            .reshape(b, t, -1)  # (b, t, d_out)
        )
        flat = merged.reshape(-1, self.d_out)  # (b·t, d_out)
        wide = np.concatenate((flat, flat, flat, flat), axis=-1)  # (b·t, 4d_out)
        return merged


def grow(idx, steps):
    """越接越长。

    形状:
        idx (b, t) → (b, t + steps)
    """
    for _ in range(steps):
        idx_next = idx[:, -1:]  # (b, 1)
        idx = np.concatenate((idx, idx_next), axis=1)  # (b, t + 1)
    return idx


def batches(count):
    for number in range(count):
        x = np.zeros((2, 3 + number))  # (b, t)
        yield x, x[:, 1:]  # (b, t)，(b, t - 1)


def split(table):
    """分开。

    返回:
        tuple[Tensor, Tensor]: 特征 (n, 2) 和标签 (n,)
    """

    def column(rows):
        return rows[:, :1].reshape(-1)  # (n,)

    return table, column(table)


def squeeze(mask):
    return np.nonzero(mask)[0].squeeze()  # (n,) 或 ()


def cross_entropy(logits, targets):
    return 0.0


attention = Attention(4, 6, 2)
output = attention.forward(np.zeros((3, 5, 4)))  # (b, t, d) = (3, 5, 6)
longer = grow(np.zeros((2, 4)), 3)  # (2, 7)

# %% 一格一格，字母重新定
for x, y in batches(3):  # (b, t)，(b, t - 1)
    both = x[:, 1:] + y  # (b, t - 1)

# %%
halves = [
    row.reshape(1, -1)  # (1, n)
    for row in (np.zeros(3), np.zeros(4))
]
doubled = {"a": np.zeros((2, 2)), "b": np.zeros((2, 2))}  # (2, 2)
kept = []
kept.append(points.reshape(10))  # (10,)
features, labels = split(points)
found = [squeeze(np.array([0, 1, 1])), squeeze(np.array([0, 1]))]
turn = lambda table: table.reshape(-1, 1)  # (n, 1)
turned = turn(points)
loss = cross_entropy(points.reshape(-1, 2), points[:, 0])  # (n, 2)，(n,)


# region 沿用 ch03/main/other.py: halve
def halve(x):
    """抄来的，注释只留形状。"""
    return x.reshape(-1, 2)  # (n, 2)


# endregion
halved = halve(points)

# %%
points = np.zeros((7, 2))  # (n, 2)
'''

# 名字、把什么换成什么（第一个 ^ 之后才开始找）、在哪一行报（默认是换掉的那一行；写别的行里的文字）、报的话里有什么
LIES = [
    ("数字错", "# (n, 2) = (5, 2)", "# (n, 2) = (5, 3)", None, "(5, 2)"),
    ("维数错", "points = np.zeros((5, 2))  # (n, 2) = (5, 2)", "points = np.zeros((5, 2))  # (n,)", None, "写了 1 维，实际是 2 维"),
    ("一维写成零维", "total = points.sum()  # ()", "total = points.sum()  # (1,)", None, "写了 1 维，实际是 0 维"),
    ("元组的第二个", "# (3, 2)，(2, 2)", "# (3, 2)，(3, 2)", None, "3"),
    ("个数", "# 三个 (n, 2)", "# 两个 (n, 2)", None, "写了 2 个，实际有 3 个"),
    ("都是", "same = [points, points]", "same = [points, points[:3]]", None, "n 应是 5，实际是 3"),
    ("各是多大", "# 各 (m, 2)", "# 各 (2, m)", None, "写着 2，实际是 5"),
    ("文档里的元组", "特征 (n, 2) 和标签 (n,)", "特征 (n, 2) 和标签 (n, 1)", None, "写了 2 维，实际是 1 维"),
    ("字母换了位置", "# (b, h, t, t)", "# (b, t, h, t)", None, "t"),
    ("一次调用里不一致", "queries = x @ self.W_query  # (b, t, d_out)", "queries = x @ self.W_query  # (b, t, t)", None, "t 应是 5"),
    ("变量名对不上", "self.mask = np.ones((8, 8))  # (8, 8)", "self.mask = np.ones((8, 8))  # (8, d_out)", None, "变量 d_out"),
    ("就地修改之后", "queries += 1  # (b, t, d_out)", "queries += 1  # (b, t)", None, "2 维"),
    ("变形之前", "# (b, t, d_out) → (b, h, t, k)", "# (b, d_out, t) → (b, h, t, k)", None, "d_out"),
    ("变形之后", "# (b, t, d_out) → (b, h, t, k)", "# (b, t, d_out) → (b, t, h, k)", None, ""),
    ("链的中间", "(scores @ heads)  # (b, h, t, k)", "(scores @ heads)  # (b, h, k, t)", None, ""),
    ("链的后面一步", ".transpose(0, 2, 1, 3)  # (b, t, h, k)", ".transpose(0, 2, 1, 3)  # (b, h, t, k)", None, ""),
    ("乘积", "# (b·t, d_out)", "# (b·h, d_out)", None, "b·h 应是 6"),
    ("几倍", "# (b·t, 4d_out)", "# (b·t, 3d_out)", None, "3d_out 应是 18"),
    ("省略号后面", "# (…, 1)　留着最后一维", "# (…, 2)　留着最后一维", None, "写着 2，实际是 1"),
    ("k 不是 d / h", "（k = d / h）", "（k = d）", "→ (b, h, t, k)", "形状记号里说 k = d，这里却是 d = 6、k = 3"),
    ("记号里的算式错", "（k = d / h）", "（k = d × h）", "→ (b, h, t, k)", "k = d × h"),
    ("记号里的数错", "n 样本数", "n 样本数（这里 n = 4）", "# (n, 2) = (5, 2)", "n = 4"),
    ("类的文档：输入", "        输入 (b, t, d_in) → 输出", "        输入 (b, d_in, t) → 输出", None, ""),
    ("类的文档：输出", "→ 输出 (b, t, d_out)", "→ 输出 (b, t, d_in)", None, "d_in"),
    ("类的文档：存下的张量", "        mask (8, 8)", "        mask (8, 9)", None, "9"),
    ("文档的参数", "x (Tensor): 输入，(b, t, d_in)", "x (Tensor): 输入，(t, d_in)", None, "3 维"),
    ("文档的返回", "Tensor: 上下文向量，(b, t, d_out)", "Tensor: 上下文向量，(b, t, h)", None, ""),
    ("函数的文档", "idx (b, t) → (b, t + steps)", "idx (b, t) → (b, t + 1)", None, "t + 1"),
    ("循环里，一直都错", "idx_next = idx[:, -1:]  # (b, 1)", "idx_next = idx[:, -1:]  # (b, 2)", None, ""),
    ("循环里，后来才错", "# (b, t + 1)", "# (b, t + 1)\n        some = idx[: 2 if idx.shape[1] < 6 else 1]  # (b, t + 1)", "some =", "实际是 1"),
    ("循环里，后来两处不一致", "both = x[:, 1:] + y  # (b, t - 1)", "both = x[:, -2:] + y[:, -2:]  # (b, t - 1)", None, "t - 1"),
    ("生成器里", "yield x, x[:, 1:]  # (b, t)，(b, t - 1)", "yield x, x[:, 1:]  # (b, t)，(b, t)", None, "t 应是 3，实际是 2"),
    ("for 的目标", "in batches(3):  # (b, t)，(b, t - 1)", "in batches(3):  # (b, t)", None, ""),
    ("推导式里的一项", "row.reshape(1, -1)  # (1, n)", "row.reshape(1, -1)  # (1, 3)", None, "写着 3，实际是 4"),
    ("字典里的每一个", '"b": np.zeros((2, 2))}', '"b": np.zeros((2, 3))}', None, "(2, 3)"),
    ("append 的参数", "# (10,)", "# (5,)", None, "(10,)"),
    ("函数里的小函数", "return rows[:, :1].reshape(-1)  # (n,)", "return rows[:, :1].reshape(-1)  # (n, 1)", None, "1 维"),
    ("两种写法都不对", "# (n,) 或 ()", "# (n, n) 或 ()", None, ""),
    ("只写了一种", "squeeze()  # (n,) 或 ()", "squeeze()  # (n,)", None, "0 维"),
    ("lambda 里", "table.reshape(-1, 1)  # (n, 1)", "table.reshape(-1, 1)  # (1, n)", None, "写着 1"),
    ("损失函数的参数", "points[:, 0])  # (n, 2)，(n,)", "points[:, 0])  # (n, 2)，(n, 2)", None, "1 维"),
    ("沿用区里", "    return x.reshape(-1, 2)  # (n, 2)", "    return x.reshape(-1, 2)  # (2, n)", None, "写着 2"),
    ("返回值", "    return merged\n", "    return merged  # (b, t, d_in)\n", None, "d_in"),
    ("另一格里不一致", "points = np.zeros((7, 2))  # (n, 2)\n", "points = np.zeros((7, 2))  # (n, n)\n", None, "n"),
    ("得到的不是张量", "HALF = (3 + 1) / 2  # (3 + 1) / 2 是公式", "HALF = (3 + 1) / 2  # (b, t)", None, "不是张量"),
    ("没有写形状", "kept.append(points.reshape(10))  # (10,)", "kept = points.reshape(10)", None, "请在行尾写形状"),
    ("没有写形状，在沿用区里", "    return x.reshape(-1, 2)  # (n, 2)", "    return x.reshape(-1, 2)", None, "请在行尾写形状"),
]


def examine(text, folder):
    """在一个空的小项目里查一段代码。"""
    path = folder / "main" / "demo.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    project = folder / "project"
    project.mkdir(exist_ok=True)
    return shapes.examine(path, project)


def test_clean_script(tmp_path):
    """都写对时什么也不报；每一条都真的比过，公式和 (max_length, stride) 不当成形状。"""
    result = examine(CLEAN, tmp_path)
    assert result["problems"] == [] and result["unreached"] == []
    lines = dict(enumerate(CLEAN.splitlines(), start=1))
    written = {number for number, line in lines.items() if re.search(r"#.*\(|输入 \(|mask \(|输入，\(|Tensor.*\(|→ \(", line)}
    assert written - set(result["checked"]) == {number for number, line in lines.items() if "SETTINGS" in line or "HALF" in line}


@pytest.mark.parametrize("name, old, new, where, said", LIES, ids=[lie[0] for lie in LIES])
def test_planted_lie(name, old, new, where, said, tmp_path):
    """写错一处：只报这一处，行号对，话里说得出真实的形状或原因。"""
    assert CLEAN.count(old) == 1 or old.startswith("points = "), f"{name}：样本里有 {CLEAN.count(old)} 处「{old}」"
    text = CLEAN.replace(old, new, 1)
    expected = text[: text.index(where or new)].count("\n") + 1
    problems = examine(text, tmp_path)["problems"]
    assert [problem.split("　")[0].rpartition(":")[2] for problem in problems] == [str(expected)], problems
    assert said in problems[0]


def test_real_script(tmp_path):
    """真的脚本、真的 torch：多头注意力里同时写错三处，三处都找得到，也只找到这三处。"""
    text = (SETUP.parent / "ch03" / "main" / "multihead_attention.py").read_text(encoding="utf-8")
    wrong = [("# (b, h, t, t)", "# (b, h, t, k)"), ("输出 (b, t, d_out)", "输出 (b, t, h)"), ("x (Tensor): 输入嵌入，(b, t, d_in)", "x (Tensor): 输入嵌入，(t, b, d_in)")]
    lines = []
    for old, new in wrong:
        lines.append(text[: text.index(old)].count("\n") + 1)
        text = text.replace(old, new, 1)
    found = [int(problem.split("　")[0].rpartition(":")[2]) for problem in examine(text, tmp_path)["problems"]]
    assert found == sorted(lines)


def test_swapped_letters_by_value(tmp_path):
    """k 真的算错了：形状自己不矛盾，只有关系 k = d / h 看得出来。"""
    code = "x = np.zeros((2, 5, 6))  # (b, t, d)\ny = np.zeros((2, 3, 5, 4))  # (b, h, t, k)\n"
    problems = examine('"""演示\n\n形状记号：b d h t k（k = d / h）\n"""\nimport numpy as np\n' + code, tmp_path)["problems"]
    assert len(problems) == 1 and "demo.py:7" in problems[0] and "这里却是 d = 6、h = 3、k = 4" in problems[0]


def test_unreached_and_failing(tmp_path):
    """没跑到的注释不算查过；脚本中途出错，要报出来，之前查到的还在。"""
    code = "import numpy as np\nif len('') > 0:\n    x = np.zeros((2, 3))  # (9, 9)\ny = np.zeros((2, 3))  # (2, 4)\nraise ValueError('坏了')\n"
    result = examine(code, tmp_path)
    assert result["checked"] == [4] and [line for line, _ in result["unreached"]] == [3]
    assert len(result["problems"]) == 2 and "ValueError: 坏了" in result["problems"][0] and "demo.py:4" in result["problems"][1]


def test_command_line(tmp_path):
    """退出码、建议的注释、没跑到的清单，和一句话的报错。"""
    script = tmp_path / "main" / "demo.py"
    script.parent.mkdir()
    script.write_text(CLEAN.replace("# (b, t, h, k)", "# (b, h, t, k)").replace("(n, 2) = (5, 2)", "(n, 2) = (5, 3)"), encoding="utf-8")

    def call(*arguments):
        command = [sys.executable, str(TOOL), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, encoding="utf-8", env=os.environ | {"PYTHONIOENCODING": "utf-8"})

    done = call(script, "--fix", "--verbose", "--jobs", "1")
    assert done.returncode == 1 and "2 处不对" in done.stdout and "0 条没有跑到" in done.stdout, done.stdout + done.stderr
    assert "  - (n, 2) = (5, 3)\n  + (n, 2) = (5, 2)\n" in done.stdout and "  - (b, h, t, k)\n  + (b, t, h, k)\n" in done.stdout
    script.write_text(CLEAN, encoding="utf-8")
    done = call(script)
    assert done.returncode == 0 and "0 处不对" in done.stdout
    assert call("--help").stdout.startswith("查形状")
    for bad in (["--nosuch"], [tmp_path / "absent.py"], ["--jobs"], ["--jobs", "x"]):
        done = call(*bad)
        assert done.returncode == 2 and done.stderr.startswith("出错了：") and "Traceback" not in done.stderr


# ---- 全项目的脚本 ----


# 全部跑一遍要八分钟，所以查过的记在 shapes.json 里；这里核对记录没有过时，再抽几个真跑：有训练的、有缓存的、抄了许多组件的。
SAMPLE = [
    "ch02/main/dataloader.py",
    "ch03/main/multihead_attention.py",
    "ch03/experiments/exp_mha_variants.py",
    "ch04/main/gpt.py",
    "ch04/experiments/exp_gated_deltanet.py",
    "ch05/main/example_03_decoding.py",
    "ch05/experiments/exp_rope_layouts.py",
    "ch06/main/gpt_class_finetune.py",
    "ch07/main/example_02_collate.py",
    "appendix-A/main/example_04_data_and_training.py",
]


def test_every_script_was_checked():
    """改了一个字，就要重新查：点出是哪几个。"""
    assert shapes.stale() == [], "这些改过之后没有查，请运行 python setup/checks/shapes.py --changed"
    known = shapes.records()
    assert sorted(known) == sorted(path.relative_to(SETUP.parent).as_posix() for path in SCRIPTS)


def test_a_changed_script_is_named(tmp_path, monkeypatch):
    """记录真的会过时：改代码、改注释都算，用时那一行不算；有问题的不记。"""
    script = tmp_path / "ch02" / "main" / "a.py"
    script.parent.mkdir(parents=True)
    script.write_text('"""甲。\n\n    约 1 秒，0.1 GB（2 核 CPU）\n"""\nx = 1\n', encoding="utf-8")
    monkeypatch.setattr(shapes, "ROOT", tmp_path)
    monkeypatch.setattr(shapes, "RECORDS", tmp_path / "shapes.json")
    monkeypatch.setattr(shapes.comments, "scripts", lambda: [script])
    good = {"problems": [], "checked": [1, 2], "unreached": []}
    assert shapes.stale() == [script]
    shapes.record({script: good | {"problems": ["不对"]}})
    assert shapes.stale() == [script] and shapes.records() == {}
    shapes.record({script: good})
    assert shapes.stale() == [] and shapes.records()["ch02/main/a.py"]["checked"] == 2
    script.write_text(script.read_text(encoding="utf-8").replace("约 1 秒", "约 9 秒"), encoding="utf-8")
    assert shapes.stale() == []
    script.write_text(script.read_text(encoding="utf-8").replace("x = 1", "x = 1  # (b, t)"), encoding="utf-8")
    assert shapes.stale() == [script]


@pytest.mark.parametrize("name", SAMPLE)
def test_sample_is_still_true(name, tmp_path):
    """真的跑一遍，结果与记录相同。"""
    path = SETUP.parent / name
    shapes.make_project(tmp_path, train=name.startswith(("ch05/main", "ch06")))
    result, known = shapes.examine(path, tmp_path), shapes.records()[name]
    assert result["problems"] == [], "\n".join(result["problems"])
    assert (len(result["checked"]), len(result["unreached"])) == (known["checked"], known["unreached"])


def test_how_many():
    """真正比过的注释有多少条；没有跑到的不算，也不能多。"""
    checked, unreached = (sum(entry[key] for entry in shapes.records().values()) for key in ("checked", "unreached"))
    assert checked > 600 and unreached < checked / 4, (checked, unreached)
