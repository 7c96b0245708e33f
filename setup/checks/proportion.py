"""量比例：main/ 的脚本里，多少是课，多少是管道

读者打开 main/ 的一个脚本，应当看到书上的程序，而不是参数、路径、检查点和报错。这里把每个脚本的非空行分成五类，数一数（折叠区的标记不算）：
    课    这一节的新内容，连同它的注释和文档
    抄写  从别处沿用的组件（改写的算课）
    管道  命令行参数、找文件读文件、权重与检查点、设备、报错的框架；书上正好在教它的地方，算课
    导入  import
    自查  「这个数字对吗？」

运行：
    python setup/checks/proportion.py                # 查 main/ 的所有脚本，印出总表，超过限度的列出来
    python setup/checks/proportion.py 某个脚本.py    # 每一行归哪一类
    约 1 秒，0.1 GB（2 核 CPU）
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "setup"))
import copy_forward

KINDS = ["课", "抄写", "管道", "导入", "自查"]
LIMITS = {"plumbing_all": 0.12, "plumbing_one": 0.20, "lesson_all": 0.50, "function": 60, "first_cell": 80, "train_model_simple": 30}

# 一条语句里出现这些名字，就是管道；右边是它属于哪一种。
PLUMBING = {
    "参数": {"argparse", "parser", "parse_args", "add_argument"},
    "文件": {"find_data", "read_text", "write_text", "open", "mkdir", "unlink", "is_file", "is_dir", "exists", "environ", "replace_file", "resolve", "DictReader", "reader", "writer"},
    "权重": {"load_state_dict", "torch.load", "torch.save", "os.replace", "safe_open", "load_file", "save_file"},
    "设备": {"pick_device", "is_available", "get_device_name"},
    "报错": {"sys.exit", "SystemExit", "KeyboardInterrupt", "stderr", "warnings"},
}
# 书上正好在教它的地方：那一种不算管道。
TAUGHT = {
    "ch02/main/example_01_tokenizer.py": {"文件"},  # 2.2 读入文本
    "ch05/main/example_04_save_load.py": {"权重", "文件"},  # 5.4 存和读
    "ch05/main/example_05_openai_weights.py": {"权重", "文件"},  # 5.5 OpenAI 的权重
    "ch05/main/gpt_download.py": {"权重", "文件"},
    "ch06/main/example_01_data.py": {"文件"},  # 6.2 下载、切分、存成 csv
    "ch06/main/example_05_finetune_classifier.py": {"权重"},
    "ch07/main/example_01_dataset_and_prompt.py": {"文件"},  # 7.2
    "ch07/main/example_05_responses.py": {"文件", "权重"},  # 7.7 存下回答和模型
    "appendix-A/main/example_04_data_and_training.py": {"权重"},  # A.8 存取模型
    "appendix-A/main/example_05_devices.py": {"设备"},  # A.9
    "appendix-A/main/ddp_torchrun.py": {"设备", "文件"},  # A.9.3：环境变量正是 torchrun 与脚本说话的方式
}


def names_in(node):
    """一段语法里出现的名字：变量、属性，以及 torch.load 这样带点的。

    参数:
        node (ast.AST): 语句或表达式

    返回:
        set[str]: 名字
    """
    found = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name):
            found.add(inner.id)
        elif isinstance(inner, ast.Attribute):
            found.add(inner.attr)
            if isinstance(inner.value, ast.Name):
                found.add(f"{inner.value.id}.{inner.attr}")
    return found


def is_check(node):
    """是不是「这个数字对吗？」的一行。

    参数:
        node (ast.stmt): 语句

    返回:
        bool: 是
    """
    words = [inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant)]
    return isinstance(node, ast.Expr) and ("confirm" in names_in(node) or any("这个数字对吗" in str(word) for word in words))


def classify(path):
    """给一个脚本的每一行定类。

    参数:
        path (Path): 脚本

    返回:
        dict[int, str]: 行号（从 1 起，没有空行和折叠区的标记）→ 类
    """
    text = path.read_text(encoding="utf-8")
    lines, tree = text.splitlines(), ast.parse(text)
    relative = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    words = set().union(*(found for kind, found in PLUMBING.items() if kind not in TAUGHT.get(relative, set())))
    kind_of = {}

    def mark(start, end, kind):
        for number in range(start, end + 1):
            kind_of[number] = kind

    def visit(node, default):
        """给一条语句定类，返回它的类；复合语句逐条看里面的。"""
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            kind = "导入"
        elif is_check(node):
            kind = "自查"
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            mark(node.lineno, node.end_lineno, default)
            body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
            kinds = {visit(child, default) for child in body}
            kind = kinds.pop() if len(kinds) == 1 and kinds <= {"管道", "自查"} else default  # 整个函数都是管道，连文档也算
            if kind != default:
                mark(node.lineno, node.end_lineno, kind)
            return kind
        elif isinstance(node, (ast.If, ast.For, ast.While, ast.With, ast.Try)):
            parts = [child for field in ("body", "orelse", "finalbody") for child in getattr(node, field, [])]
            mark(node.lineno, node.end_lineno, default)
            kinds = {visit(child, default) for child in parts}
            for handler in getattr(node, "handlers", []):  # 接住异常、换成一句话：报错的框架
                mark(handler.lineno, handler.end_lineno, "管道")
            head = node.test if isinstance(node, (ast.If, ast.While)) else node.iter if isinstance(node, ast.For) else node.items[0].context_expr if isinstance(node, ast.With) else None
            same = kinds.pop() if len(kinds) == 1 else None
            plumbing = isinstance(node, ast.Try) or same == "管道" or (same is None and isinstance(node, ast.With) and bool(names_in(head) & words))
            kind = "自查" if same == "自查" else "管道" if plumbing else default
            mark(node.lineno, (node.body[0].lineno if node.body else node.lineno) - 1, kind)
            return kind if same or kind == default else default
        elif names_in(node) & words:
            kind = "管道"
        else:
            kind = default
        mark(node.lineno, node.end_lineno, kind)
        return kind

    for node in tree.body:
        guard = isinstance(node, ast.If) and "__name__" in names_in(node.test)
        if guard:
            mark(node.lineno, node.end_lineno, "管道")
        else:
            visit(node, "课")
    # 整行注释跟着下一行代码；模块文档、cell 标记是课。
    after = "课"
    for number in range(len(lines), 0, -1):
        if lines[number - 1].lstrip().startswith("#"):
            kind_of[number] = "课" if lines[number - 1].startswith("# %%") else after
        elif lines[number - 1].strip():
            after = kind_of.setdefault(number, "课")
    for kind, source, _, start, end in copy_forward.regions(path):
        if kind != "改写":
            tool = "自查" if source == "setup/self_check.py" else "管道"
            mark(start + 1, end + 1, tool if source.startswith("setup/") else "抄写")
    return {number: kind for number, kind in kind_of.items() if not re.match(r"\s*$|# (region|endregion)\b", lines[number - 1])}


def functions(path):
    """一个脚本自己的函数（沿用的不算），各有多少行代码：文档、注释、空行不算。

    参数:
        path (Path): 脚本

    返回:
        list[tuple[str, int, int]]: 名字、行号、代码行数
    """
    text = path.read_text(encoding="utf-8")
    copied = {number for kind, *_, start, end in copy_forward.regions(path) if kind != "改写" for number in range(start + 1, end + 2)}
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.lineno not in copied:
            found.append((node.name, node.lineno, len(code_of(text, node))))
    return found


def code_of(text, node):
    """一个函数的代码行：去掉文档、注释和空行。

    参数:
        text (str): 整个脚本
        node (ast.FunctionDef): 函数

    返回:
        list[int]: 行号
    """
    doc = range(node.body[0].lineno, node.body[0].end_lineno + 1) if ast.get_docstring(node) else ()
    lines = text.splitlines()
    return [number for number in range(node.lineno, node.end_lineno + 1) if number not in doc and lines[number - 1].strip() and not lines[number - 1].lstrip().startswith("#")]


def first_cell(path):
    """逐步讲解的第一格在第几行，沿用的组件不算。

    参数:
        path (Path): 脚本

    返回:
        int 或 None: 行号；没有一格时为 None
    """
    copied = {number for kind, *_, start, end in copy_forward.regions(path) if kind != "改写" for number in range(start + 1, end + 2)}
    count = 0
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        count += number not in copied
        if line.startswith("# %%"):
            return count
    return None


def scripts():
    """所有 main/ 的脚本。

    返回:
        list[Path]: 按章排
    """
    return sorted([*ROOT.glob("ch0*/main/*.py"), *ROOT.glob("appendix-*/main/*.py")])


def check(paths):
    """数一遍，列出超过限度的。

    参数:
        paths (list[Path]): 脚本

    返回:
        tuple[list[str], list[str]]: 总表的各行；每个问题一行
    """
    rows, problems, total = [f"{'行':>5}" + "".join(f"{kind:>5}" for kind in KINDS) + "  脚本"], [], dict.fromkeys(KINDS, 0)
    for path in paths:
        name, kinds = path.relative_to(ROOT).as_posix(), list(classify(path).values())
        counts = {kind: kinds.count(kind) for kind in KINDS}
        total = {kind: total[kind] + counts[kind] for kind in KINDS}
        rows.append(f"{len(kinds):6}" + "".join(f"{counts[kind] / len(kinds):7.0%}" for kind in KINDS) + f"  {name}")
        if counts["管道"] > LIMITS["plumbing_one"] * len(kinds):
            problems.append(f"{name}　管道占 {counts['管道'] / len(kinds):.0%}，至多 {LIMITS['plumbing_one']:.0%}")
        for function, line, length in functions(path):
            limit = LIMITS["train_model_simple" if function == "train_model_simple" else "function"]
            if length > limit:
                problems.append(f"{name}:{line}　{function} 有 {length} 行代码，至多 {limit}")
        if re.match(r"example_\d", path.name):
            start = first_cell(path)
            if start is None or start > LIMITS["first_cell"]:
                problems.append(f"{name}　第一格 # %% 在第 {start} 行（沿用的组件不算），至多 {LIMITS['first_cell']}")
    lines = sum(total.values())
    rows.append(f"{lines:6}" + "".join(f"{total[kind] / lines:7.0%}" for kind in KINDS) + "  合计")
    if total["管道"] > LIMITS["plumbing_all"] * lines:
        problems.append(f"合计　管道占 {total['管道'] / lines:.1%}，至多 {LIMITS['plumbing_all']:.0%}")
    if total["课"] < LIMITS["lesson_all"] * lines:
        problems.append(f"合计　课占 {total['课'] / lines:.1%}，至少 {LIMITS['lesson_all']:.0%}")
    return rows, problems


def main():
    """命令行：不带参数查 main/ 的所有脚本；给出几个文件，就印出它们的每一行归哪一类。"""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")
    paths = [Path(argument).resolve() for argument in sys.argv[1:]]
    if sys.argv[1:] in (["-h"], ["--help"]):
        print(__doc__)
    elif wrong := [path.name for path in paths if path.suffix != ".py" or not path.is_file()]:
        print(f"出错了：看不懂 {wrong[0]}，用法：proportion.py [已有的 .py 文件…]", file=sys.stderr)
        sys.exit(2)
    elif paths:
        for path in paths:
            kinds = classify(path)
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
                print(f"{kinds.get(number, '　　')}　{line}")
    else:
        rows, problems = check(scripts())
        print("\n".join([*rows, *problems]))
        sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
