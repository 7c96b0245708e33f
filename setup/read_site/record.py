"""边读边看之二：真的跑一遍脚本，记下每一格印了什么、画了什么图、每个变量是什么形状

脚本在临时的小项目里跑（自带的数据，原书的数据不用），读者的 outputs/ 不受影响；代码、行号、随机数都不变，只在语法树里加两种记号：
    cell__(3)                        第 3 格从这里开始：在标准输出里做个记号，子进程印的也归到这一格
    see__(12, {"queries": queries})  第 12 行刚给 queries 赋过值：是张量就记下形状、类型，小的连数一起记
记录在 setup/read_records/，按「脚本 + 数据 + torch 的版本」的摘要存：改了一个字，旧的记录就不再显示。

运行：由 setup/read.py --run 调用
"""

import ast
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import types
from datetime import date
from functools import cache
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "setup" / "read_records"
TIME = re.compile(r"^.*约 .*核 CPU.*\n", re.MULTILINE)  # 重新量过的用时不算改
MARK = "\x1e"  # ASCII 的"记录分隔符"：脚本自己不会印它
LIMIT, SMALL = 60_000, 24  # 一个脚本最多记多少字符；元素不超过这么多的张量，连数一起记
WIDE, QUALITY = 1200, 80  # 图最宽多少像素，WebP 的质量
AFTER = {  # 先跑右边的，左边的才有模型和回答可用
    "ch06/main/example_06_classify_review.py": ["ch06/main/example_05_finetune_classifier.py"],
    "ch07/main/example_05_responses.py": ["ch07/main/example_04_finetune.py"],
    "ch07/main/example_06_scores.py": ["ch07/main/example_04_finetune.py", "ch07/main/example_05_responses.py"],
}


class Marker(ast.NodeTransformer):
    """在语法树里加上 cell__ 和 see__。

    参数:
        marks (list[int]): 每个 `# %%` 在第几行
    """

    def __init__(self, marks):
        self.marks = marks

    @staticmethod
    def see(line, targets, near):
        """造一句 `see__(12, {"x": x})`。

        参数:
            line (int): 行号
            targets (list[ast.expr 或 str]): 赋值的左边，或函数的参数名
            near (ast.AST): 位置跟着谁

        返回:
            list[ast.stmt]: 没有名字可看时为空
        """
        names, waiting = [], list(targets)
        while waiting:
            target = waiting.pop(0)
            if isinstance(target, (ast.Tuple, ast.List)):
                waiting += target.elts
            elif isinstance(target, str):
                names.append((target, target))
            elif isinstance(target, ast.Name):
                names.append((target.id, target.id))
            elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
                names.append((f"self.{target.attr}", f"self.{target.attr}"))
        names = [pair for pair in names if pair[0] != "_"]
        if not names:
            return []
        text = ", ".join(f"{shown!r}: {code}" for shown, code in names)
        made = ast.parse(f"see__({line}, {{{text}}})").body[0]
        for node in ast.walk(made):
            ast.copy_location(node, near)
        return [made]

    def visit_ClassDef(self, node):
        """类的属性不看，只进方法。

        参数:
            node (ast.ClassDef): 类

        返回:
            ast.ClassDef: 它自己
        """
        node.body = [self.visit(inner) if isinstance(inner, (ast.FunctionDef, ast.ClassDef)) else inner for inner in node.body]
        return node

    def visit_FunctionDef(self, node):
        """函数开头看一眼参数。

        参数:
            node (ast.FunctionDef): 函数

        返回:
            ast.FunctionDef: 它自己
        """
        line, arguments = node.lineno, [each.arg for each in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs] if each.arg not in ("self", "cls")]
        self.generic_visit(node)
        at = int(ast.get_docstring(node) is not None)
        node.body[at:at] = self.see(line, arguments, node.body[0])
        return node

    def visit_For(self, node):
        """循环变量，进循环就看。

        参数:
            node (ast.For): 循环

        返回:
            ast.For: 它自己
        """
        self.generic_visit(node)
        node.body[:0] = self.see(node.lineno, [node.target], node.body[0])
        return node

    def visit_With(self, node):
        """进了 with 就看 as 后面的。

        参数:
            node (ast.With): with 语句

        返回:
            ast.With: 它自己
        """
        self.generic_visit(node)
        node.body[:0] = self.see(node.lineno, [item.optional_vars for item in node.items if item.optional_vars], node.body[0])
        return node

    def visit_Assign(self, node):
        """赋值之后看左边。"""
        return [node, *self.see(node.lineno, node.targets, node)]

    def visit_AugAssign(self, node):
        """x += … 之后。"""
        return [node, *self.see(node.lineno, [node.target], node)]

    def visit_AnnAssign(self, node):
        """带类型的赋值。"""
        return [node, *self.see(node.lineno, [node.target], node)] if node.value else node

    def mark(self, tree):
        """加好所有记号。

        参数:
            tree (ast.Module): 脚本

        返回:
            ast.Module: 可以编译的语法树
        """
        starts = {}  # 每格的第一条语句（加过记号的语句行号不变）
        for cell, mark in enumerate(self.marks, start=1):
            following = [node for node in tree.body if first_line(node) > mark]
            if following:
                starts.setdefault(id(following[0]), []).append(cell)
        body = []
        for node in tree.body:
            for cell in starts.get(id(node), []):
                body.append(ast.copy_location(ast.parse(f"cell__({cell})").body[0], node))
            made = self.visit(node)
            body += made if isinstance(made, list) else [made]
        tree.body = body
        return ast.fix_missing_locations(tree)


def first_line(node):
    """一条语句从哪一行开始，装饰器也算。"""
    return min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])


def describe(value):
    """一个张量是什么样子。

    参数:
        value (object): 任何东西

    返回:
        list 或 None: 形状、类型、小的再加上各个数；不是张量就是 None

    示例:
        >>> import numpy
        >>> describe(numpy.array([[1, 2], [3, 4]]))
        [[2, 2], 'int64', [[1, 2], [3, 4]]]
        >>> describe("文字") is None
        True
    """
    kind = type(value).__module__.partition(".")[0]
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if kind not in ("torch", "numpy") or dtype is None or not isinstance(shape, tuple):
        return None
    found = [[int(size) for size in shape], str(dtype).replace("torch.", "")]
    if math.prod(shape) <= SMALL and "meta" not in str(getattr(value, "device", "")):
        numbers = value.detach().float().tolist() if hasattr(value, "detach") and "float" in found[1] else value.tolist()
        found.append(rounded(numbers))
    return found


def rounded(numbers):
    """保留四位小数；JSON 里没有的 inf 和 nan 写成字。

    参数:
        numbers (list 或 float): 数，或一层层的列表

    返回:
        list 或 float 或 str: 同样的层次
    """
    if isinstance(numbers, list):
        return [rounded(each) for each in numbers]
    if isinstance(numbers, float):
        return round(numbers, 4) if math.isfinite(numbers) else str(numbers)
    return numbers if isinstance(numbers, (int, bool, str)) else str(numbers)


def run_inside(script, folder, arguments):
    """在这个进程里运行一个脚本，记下形状和图片。

    参数:
        script (Path): 临时小项目里的脚本
        folder (Path): 图片和 shapes.json 写到这里
        arguments (list[str]): 脚本的命令行参数
    """
    text = script.read_text(encoding="utf-8")
    marks = [number for number, line in enumerate(text.splitlines(), start=1) if line.startswith("# %%")]
    tree = Marker(marks).mark(ast.parse(text))
    seen, looks, pictures = {}, {}, []

    def see(line, values):
        times = looks[line] = looks.get(line, 0) + 1
        if times > 40:  # 循环里看够了
            return
        for name, value in values.items():
            if found := describe(value):
                entry = seen.setdefault(f"{line}:{name}", found)
                if entry[0] != found[0] and len(entry) < 4:
                    entry += [None] * (3 - len(entry)) + [found[0]]  # 后来变成过别的形状

    def cell(number):
        print(f"{MARK}c{number}", flush=True)

    if "matplotlib" in text:
        from matplotlib.figure import Figure

        original = Figure.savefig

        def savefig(figure, name, *rest, **options):
            original(figure, name, *rest, **options)
            if Path(str(name)).suffix == ".png":
                words = [figure._suptitle.get_text() if figure._suptitle else "", *(axes.get_title() for axes in figure.axes)]
                pictures.append([f"{len(pictures)}.png", Path(name).name, "；".join(dict.fromkeys(word.replace("\n", " ") for word in words if word))[:120]])
                shutil.copyfile(name, folder / pictures[-1][0])
                print(f"{MARK}p{len(pictures) - 1}", flush=True)

        Figure.savefig = savefig
    module = types.ModuleType("__main__")
    module.__dict__.update(__file__=str(script), see__=see, cell__=cell)
    sys.modules["__main__"], sys.argv, sys.path[0] = module, [str(script), *arguments], str(script.parent)
    try:
        exec(compile(tree, str(script), "exec"), module.__dict__)
    finally:
        sys.stdout.flush()
        (folder / "seen.json").write_text(json.dumps({"shapes": seen, "pictures": pictures}), encoding="utf-8")


def make_project(folder):
    """造一个临时的小项目：脚本、自带的数据、词表；训练好的 mini 和聊天模型有就用上。

    参数:
        folder (Path): 造在哪里

    返回:
        Path: 就是 folder
    """
    for path in [*ROOT.glob("ch0*/*/*.py"), *ROOT.glob("appendix-*/*/*.py"), *ROOT.glob("setup/*.py"), *ROOT.glob("setup/data/*")]:
        if path.is_file() and path.parent.name not in ("tests", "practice"):
            copied = folder / path.relative_to(ROOT)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copied)
    (folder / "setup" / "downloads").mkdir(exist_ok=True)
    (folder / "ch05" / "outputs").mkdir(parents=True, exist_ok=True)
    tokens, mini, chat = Path("setup/downloads/tiktoken"), Path("ch05/outputs/gpt_mini.pth"), Path("ch05/outputs/smollm2-135M.pth")
    if (ROOT / tokens).is_dir():
        shutil.copytree(ROOT / tokens, folder / tokens, dirs_exist_ok=True)
    if (ROOT / mini).is_file() and not (folder / mini).exists():
        shutil.copyfile(ROOT / mini, folder / mini)
    if (ROOT / chat).is_file() and not (folder / chat).exists():  # 半个 GB，不抄，指过去；脚本写权重都是先写临时文件再改名，不会写到原来的上面
        (folder / chat).symlink_to(ROOT / chat)
    return folder


@cache
def pinned():
    """requirements.txt 里写的 torch 是哪一版。"""
    return re.search(r"^torch==([\d.]+)", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)[1]


@cache
def data_digest(path):
    """一个数据文件的摘要。"""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digest(name, text, torch_version=None):
    """记录用的摘要：脚本（用时那一行不算）、它用到的自带数据、torch 的版本。

    参数:
        name (str): 脚本，相对项目根目录
        text (str): 脚本的内容
        torch_version (str): 默认是 requirements.txt 里写的

    返回:
        str: 16 位十六进制
    """
    parts = [name, TIME.sub("", text), torch_version or pinned()]
    parts += [data_digest(path) for path in sorted((ROOT / "setup" / "data").glob("*.*")) if path.suffix != ".py" and path.name in text]
    if "gpt_mini.pth" in text and name != "ch05/main/gpt_train.py":
        parts.append(TIME.sub("", (ROOT / "ch05/main/gpt_train.py").read_text(encoding="utf-8")))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def place(name):
    """一个脚本的记录放在哪里。"""
    return RECORDS / Path(name).with_suffix(".json")


def load(name, text):
    """读一个脚本的记录。

    参数:
        name (str): 脚本
        text (str): 脚本现在的内容

    返回:
        SimpleNamespace: state（fresh 可用、stale 旧了、missing 没有）；可用时另有记录里的各项
    """
    try:
        record = json.loads(place(name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return SimpleNamespace(state="missing", cells={}, shapes={})
    if record.get("digest") != digest(name, text):
        return SimpleNamespace(state="stale", date=record.get("date", ""), cells={}, shapes={})
    return SimpleNamespace(state="fresh", **record)


def split_output(text, pictures):
    """按记号把标准输出分到各格。

    参数:
        text (str): 整个标准输出
        pictures (list[list]): 存下的图：文件名、原来的名字、说明

    返回:
        dict[str, list]: 第几格 → 一串「text、文字」或「picture、文件名、原来的名字、说明」

    示例:
        >>> split_output("开头\\n\\x1ec1\\n一\\n\\x1ep0\\n二\\n", [["0.png", "a.png", "图"]])
        {'0': [['text', '开头\\n']], '1': [['text', '一\\n'], ['picture', '0.png', 'a.png', '图'], ['text', '二\\n']]}
    """
    cells, cell = {}, "0"
    for part in re.split(f"({MARK}[cp]\\d+)\n", text):
        if match := re.fullmatch(f"{MARK}([cp])(\\d+)", part):
            if match[1] == "c":
                cell = match[2]
            else:
                cells.setdefault(cell, []).append(["picture", *pictures[int(match[2])]])
        elif part.strip("\n"):
            cells.setdefault(cell, []).append(["text", part])
    return cells


def shrink(source, target):
    """PNG 换成 WebP，太宽的缩小。

    参数:
        source (Path): PNG
        target (Path): WebP 写到哪里

    返回:
        list[int]: 宽、高
    """
    from PIL import Image  # matplotlib 的依赖，不必另装

    with Image.open(source) as image:
        image = image.convert("RGB")
        if image.width > WIDE:
            image = image.resize((WIDE, round(image.height * WIDE / image.width)), Image.LANCZOS)
        target.parent.mkdir(parents=True, exist_ok=True)
        image.save(target, "WEBP", quality=QUALITY, method=6)
        return [image.width, image.height]


def run(name, project, limit=900):
    """跑一个脚本，写下记录。

    参数:
        name (str): 脚本，相对项目根目录
        project (Path): make_project 造的小项目
        limit (int): 最多几秒

    返回:
        dict: 记录

    异常:
        RuntimeError: 没有跑完
    """
    import importlib.metadata

    environment = os.environ | {"PYTHONIOENCODING": "utf-8", "PYTHONUTF8": "1", "PYTHONDONTWRITEBYTECODE": "1", "MPLBACKEND": "Agg", "COLUMNS": "100", "NO_COLOR": "1"}
    environment.pop("LLM_DATA_DIR", None)
    started, text = time.time(), (ROOT / name).read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        command = [sys.executable, str(Path(__file__).resolve()), "--inside", str(project / name), str(folder)]
        try:
            done = subprocess.run(command, cwd=project, env=environment, capture_output=True, encoding="utf-8", errors="replace", stdin=subprocess.DEVNULL, timeout=limit)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{name} 跑了 {limit} 秒还没有完") from None
        if done.returncode:
            raise RuntimeError(f"{name} 没有跑完（退出码 {done.returncode}）：{(done.stderr.strip() or done.stdout.strip() or '没有说原因').splitlines()[-1]}")
        seen = json.loads((folder / "seen.json").read_text(encoding="utf-8"))
        output = done.stdout.replace(f"{project}/", "").replace(str(project), ".").replace("\r\n", "\n")
        if len(output) > LIMIT:
            output = output[:LIMIT] + "\n……（太长，后面的没有记）\n"
        cells = split_output(output, seen["pictures"])
        for old in place(name).parent.glob(f"{Path(name).stem}-*.webp"):
            old.unlink()
        for part in (part for parts in cells.values() for part in parts if part[0] == "picture"):
            target = place(name).with_name(f"{Path(name).stem}-{Path(part[1]).stem}.webp")
            size = shrink(folder / part[1], target)
            part[1:] = [target.name, part[2], part[3], *size]
    version = importlib.metadata.version("torch").split("+")[0]
    record = {"digest": digest(name, text, version), "torch": version, "date": date.today().isoformat(), "seconds": round(time.time() - started, 1), "cells": cells, "shapes": seen["shapes"]}
    place(name).parent.mkdir(parents=True, exist_ok=True)
    part = place(name).with_suffix(".part")
    lines = [f'"{key}": {json.dumps(value, ensure_ascii=False, separators=(",", ":"))}' for key, value in record.items()]
    part.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    os.replace(part, place(name))
    return record


if __name__ == "__main__":
    run_inside(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
