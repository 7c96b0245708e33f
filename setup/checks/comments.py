"""查注释：CODING_STANDARDS.md 里标着「🔧 comments.py」的规则，由它逐条检查

只看源代码（语法树和注释），不运行脚本，所以很快。注释写得对不对、讲得清不清楚，还得靠人读；
它只保证该有的都有：每个函数有中文文档，每个参数有说明，每次变形有形状，标点不混用。

运行：
    python setup/checks/comments.py                # 检查所有脚本
    python setup/checks/comments.py 某个脚本.py    # 只检查这一个（可以写多个）
    python setup/checks/comments.py --stats        # 每个脚本有多少注释
    约 1 秒，0.1 GB（2 核 CPU）
"""

import ast
import re
import sys
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[2]

# 注释比 =（有注释的行 + 文档字符串的行）/ 代码行。行尾注释也算一行；空行、沿用区、region 和 endregion 标记不算。
# 定范围时量过第 3 章的三个范例：总结 multihead_attention.py 1.11，逐步讲解 example_01 0.95，实验 exp_attention_heatmap.py 0.36
# （实验少，是因为组件在改写区里，画图代码也不用多讲）。下限约取范例的一半到七成；上限略高于范例，再多就盖住代码了。
# setup/ 的工具不是教材，只要求把每个函数说清楚，不设上限。
BANDS = {"main": (0.5, 1.3), "experiments": (0.25, 1.2), "setup": (0.2, float("inf"))}
BAND_MIN_CODE = 15  # 代码少于这么多行时，一个模块文档就占了大半，比例没有意义

# 字符串或注释，谁先开头算谁：字符串里的 # 不是注释，注释里的引号也不是字符串。比 tokenize 快近十倍。
LITERAL = re.compile(r"""(\"{3}|'{3})(?:\\.|.)*?\1|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|(#[^\n]*)""", re.DOTALL)
CHINESE = re.compile(r"[\u4e00-\u9fff]")
HEAD = re.compile(r"(参数|形状|返回|异常|出处|示例):(.*)")
SHAPE = re.compile(r"#\s*\([^()\u4e00-\u9fff]*\)")
PUNCTUATION = re.compile(r"(?<=[\u4e00-\u9fff])[,;:?!()]|[,;:?!()](?=[\u4e00-\u9fff])|(?<=[\u4e00-\u9fff])\.(?=\s|$)")
# 不查标点的地方：代码、网址、公式里的括号，如 (x − 均值) 和 exp(损失)。
CODE_SPAN = re.compile(r"`[^`]*`|https?://\S+|\([^()]* [-+−×·/=] [^()]*\)|\b(exp|ln|log|sqrt|softmax|sigmoid|tanh|mean|sum|max|min)\([^()]*\)")
QUOTED = re.compile(r"""`[^`]*`|"[^"]*"|'[^']*'|「[^」]*」|\([^()]*\)|https?://\S+""")
THREE_WORDS = re.compile(r"[A-Za-z]{2,}(?:[ ,]+[A-Za-z']{2,}){2}")

RESHAPING = {"view", "reshape", "transpose", "permute", "unfold", "unsqueeze", "squeeze", "flatten", "expand"}
NOT_TENSOR = {"item", "tolist", "numel", "dim", "size", "equal", "allclose", "cross_entropy", "binary_cross_entropy", "mse_loss", "nll_loss"}
REDUCTIONS = {"sum", "mean", "max", "min", "argmax", "norm", "all", "any"}  # 不给 dim 时得到一个数，形状不必写


def scripts():
    """列出默认要检查的脚本。

    返回:
        list[Path]: 章节和 setup/ 下的 .py 文件，不含测试、练习和输出
    """
    found = [*ROOT.glob("ch0*/*/*.py"), *ROOT.glob("appendix-*/*/*.py"), *ROOT.glob("setup/*.py"), *ROOT.glob("setup/checks/*.py"), *ROOT.glob("setup/practice_engine/*.py"), *ROOT.glob("setup/read_site/*.py")]
    return sorted(path for path in found if path.parent.name not in ("tests", "practice", "outputs"))


def read(path):
    """读一个脚本，把检查要用的东西一次备齐。

    参数:
        path (Path): 脚本

    返回:
        SimpleNamespace: kind 种类（BANDS 的键）、tree 语法树、nodes 所有语句、lines 各行、comments 行号到注释的字典、
            docs 每条文档字符串的行号范围、copied 沿用区的行号、adapted 改写区的行号；行号从 1 起

    异常:
        SyntaxError: 不是能运行的 Python
    """
    text = path.read_text(encoding="utf-8")
    tree, lines = ast.parse(text), text.splitlines()
    comments, number, before = {}, 1, 0
    for match in LITERAL.finditer(text):
        number, before = number + text.count("\n", before, match.start()), match.start()
        if match[2]:
            comments[number] = match[2]
    nodes, waiting = [], [tree]  # 只走语句，不走表达式，比 ast.walk 快几倍
    while waiting:
        nodes.append(waiting.pop())
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            waiting += getattr(nodes[-1], field, [])
    holders = [node for node in nodes if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node)]
    docs = [(node.body[0].lineno, node.body[0].end_lineno) for node in holders]
    copied, adapted, inside = set(), set(), None
    for number in range(1, len(lines) + 1):
        mark = comments.get(number, "")
        if mark.startswith(("# region 沿用", "# region 改写")):
            inside = copied if mark.startswith("# region 沿用 ") else adapted if mark.startswith("# region 改写") else None  # 沿用（含注释）：读者读得到它的注释，照常查
        if inside is not None:
            inside.add(number)
        if mark.startswith("# endregion"):
            inside = None
    kind = path.parent.name if path.parent.name in BANDS else "setup"
    return SimpleNamespace(kind=kind, tree=tree, nodes=nodes, lines=lines, comments=comments, docs=docs, copied=copied, adapted=adapted)


def documented(source):
    """找出必须写文档的定义：模块、类、函数、方法。抄来的不算，函数里面的小函数也不算。

    参数:
        source (SimpleNamespace): read 的结果

    返回:
        list[tuple]: 每个定义一项：节点，和文档所在的节点（`__init__` 的文档写在类里）
    """
    found = [(source.tree, source.tree)]
    for node in source.tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.lineno not in source.copied | source.adapted:
            found.append((node, node))
            methods = [inner for inner in node.body if isinstance(inner, ast.FunctionDef) and isinstance(node, ast.ClassDef)]
            found += [(method, node if method.name == "__init__" else method) for method in methods]
    return found


def sections(doc):
    """把文档字符串按 参数、返回 等小标题分开。

    参数:
        doc (str): 文档字符串，已去掉公共缩进

    返回:
        dict[str, list[str]]: 小标题到它下面各行
    """
    result, head = {}, None
    for line in doc.splitlines():
        if match := HEAD.match(line):
            head = match[1]
            result[head] = [match[2]]
        elif head and (not line or line.startswith(" ")):
            result[head].append(line)
        else:
            head = None
    return result


def own_nodes(function):
    """遍历一个函数自己的语句，不进入它里面定义的函数。

    参数:
        function (ast.FunctionDef): 函数

    返回:
        list[ast.AST]: 所有语法节点
    """
    found, waiting = [], list(function.body)
    while waiting:
        node = waiting.pop()
        found.append(node)
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Lambda)):
            waiting += ast.iter_child_nodes(node)
    return found


def check_docstrings(source):
    """规则 文档、参数、返回、异常：该写文档的都写了，而且与代码对得上。

    参数:
        source (SimpleNamespace): read 的结果

    返回:
        list[tuple]: 每个问题一项：行号、规则、说明
    """
    problems = []
    for node, owner in documented(source):
        line, name = getattr(node, "lineno", 1), getattr(node, "name", "模块")
        doc = ast.get_docstring(owner) or ""
        if node is owner and not CHINESE.search(doc):
            problems.append((line, "文档", f"{name} 没有中文文档字符串"))
        if not isinstance(node, ast.FunctionDef) or not doc:
            continue
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
        names = [argument.arg for argument in arguments if argument and argument.arg not in ("self", "cls", "_")]
        statements = [inner for inner in node.body if not (isinstance(inner, ast.Expr) and isinstance(inner.value, ast.Constant))]
        if name == "main" and names in ([], ["args"]) or len(statements) == 1 and isinstance(statements[0], (ast.Return, ast.Expr)):
            continue  # 命令行的参数写在 --help 里，main 有一句话就够；只有一句的函数，一行文档也够
        parts, nodes = sections(doc), own_nodes(node)
        # 参数一行写成 `名字 (类型): 说明` 或 `名字: 说明`，缩进 4 格；缩进更深的是上一行的继续。
        entries = [re.match(r" {4}([^\s(:][^(:]*)(?:\(.*?\))?:", entry) for entry in parts.get("参数", [])]
        written = {word for entry in entries if entry for word in re.findall(r"\w+", entry[1])}
        problems += [(line, "参数", f"{name} 的参数 {missing} 没有说明，请写进「参数:」") for missing in names if missing not in written]
        problems += [(line, "参数", f"「参数:」里写了 {extra}，但 {name} 没有这个参数") for extra in sorted(written - set(names))]
        returns = any(isinstance(inner, (ast.Yield, ast.YieldFrom)) or isinstance(inner, ast.Return) and ast.unparse(inner) not in ("return", "return None") for inner in nodes)
        if returns and "返回" not in parts and not (name == "forward" and "形状" in parts):
            problems.append((line, "返回", f"{name} 有返回值，请写「返回:」"))
        for raised in (inner.exc for inner in nodes if isinstance(inner, ast.Raise) and inner.exc):
            error = ast.unparse(raised.func if isinstance(raised, ast.Call) else raised).split(".")[-1]
            if error[0].isupper() and error not in "\n".join(parts.get("异常", [])):
                problems.append((raised.lineno, "异常", f"{name} 会抛出 {error}，请写进「异常:」"))
    return problems


def reshapes(node):
    """一个表达式的结果，是不是由变形或矩阵乘法得到的张量。

    只沿着"结果从哪来"往里看：x.view(2, 3).mean(dim=1) 看到 view；x.squeeze().tolist() 得到的是列表，不算；
    函数的参数里怎么变形与结果无关，也不算，除非是 torch、F、self 的函数（softmax、dropout 不改变形状）。

    参数:
        node (ast.AST): 表达式

    返回:
        bool: 是则应当写形状
    """
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        called, full = node.func.attr, ast.unparse(node.func)
        if called in NOT_TENSOR or called in REDUCTIONS and not (node.args or node.keywords):
            return False
        inside = [node.func.value, *(node.args if full.startswith(("torch.", "F.", "self.")) else [])]
        return called in RESHAPING or full in ("torch.stack", "torch.cat") or any(map(reshapes, inside))
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.MatMult) or reshapes(node.left) or reshapes(node.right)
    if isinstance(node, ast.Attribute):
        return node.attr not in ("shape", "dtype", "device", "grad") and reshapes(node.value)
    if isinstance(node, ast.Tuple):
        return any(map(reshapes, node.elts))
    if isinstance(node, ast.IfExp):
        return reshapes(node.body) or reshapes(node.orelse)
    return isinstance(node, (ast.Subscript, ast.UnaryOp)) and reshapes(getattr(node, "value", None) or getattr(node, "operand", None))


def check_shapes(source):
    """规则 形状：章节脚本里，赋值或返回一个变形得到的张量，行尾要有形状。

    参数:
        source (SimpleNamespace): read 的结果

    返回:
        list[tuple]: 每个问题一项：行号、规则、说明
    """
    problems = []
    for node in source.nodes:
        if source.kind != "setup" and isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Return)) and node.value and reshapes(node.value):
            # 一句话占几行时，写在第一行或最后一行都可以；紧接着（8 行以内）打印了它的形状，读者看得到，也可以不写。
            shown = [source.comments.get(line, "") for line in range(node.lineno, node.end_lineno + 1)]
            following = [line for line in source.lines[node.end_lineno : node.end_lineno + 8] if "print(" in line]
            printed = isinstance(node, ast.Assign) and any(f"{ast.unparse(node.targets[0])}.shape" in line for line in following)
            if not printed and not any(map(SHAPE.match, shown)):
                problems.append((node.lineno, "形状", "这里得到一个变形后的张量，请在行尾写形状，如 # (b, t, d)"))
    return problems


def check_text(source):
    """规则 英文注释、标点：说中文，用中文标点。

    参数:
        source (SimpleNamespace): read 的结果

    返回:
        list[tuple]: 每个问题一项：行号、规则、说明
    """
    problems, texts = [], []
    for line, comment in source.comments.items():
        words = QUOTED.sub(" ", comment)
        if not CHINESE.search(comment) and THREE_WORDS.search(words) and not re.match(r"# (%%|region|endregion|noqa|type:)", comment):
            problems.append((line, "英文注释", "请写成中文；如果是例句，请加引号"))
        if not comment.startswith(("# region", "# type:")):
            texts.append((line, comment))
    for start, end in source.docs:
        example = False  # 示例是代码和它的输出，原样保留
        for line in range(start, end + 1):
            text = source.lines[line - 1].strip().strip('"')
            head = HEAD.match(text)
            example = head[1] == "示例" if head else example and text != ""
            if not example:
                texts.append((line, re.sub(r"^[^\s，。：；]+(?: \([^)]*\))?:(?= |$)", "", text)))  # 去掉小标题和 `名字 (类型):`
    for line, text in texts:
        if match := PUNCTUATION.search(CODE_SPAN.sub("`", text)):
            problems.append((line, "标点", f"「{match[0]}」紧挨着汉字，请用全角标点，或与汉字隔一个空格"))
    return [problem for problem in problems if problem[0] not in source.copied]


def count(source):
    """数一个脚本的注释，沿用区不算。

    参数:
        source (SimpleNamespace): read 的结果

    返回:
        tuple[int, int, int, float]: 代码行数、注释行数、文档行数、注释比
    """
    docs = {line for start, end in source.docs for line in range(start, end + 1) if source.lines[line - 1].strip()}
    comments = {line for line, comment in source.comments.items() if not re.match(r"# (region|endregion)", comment)}
    code = {number for number, line in enumerate(source.lines, start=1) if line.strip() and not line.lstrip().startswith("#")}
    code, comments, docs = len(code - docs - source.copied), len(comments - source.copied), len(docs - source.copied)
    return code, comments, docs, (comments + docs) / max(code, 1)


def check(path):
    """检查一个脚本。

    参数:
        path (Path): 脚本

    返回:
        list[str]: 每个问题一行，写明文件、行号、规则和说明
    """
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    try:
        source = read(path)
    except SyntaxError as error:
        return [f"{name}:{error.lineno or 1}　语法：Python 读不懂这个文件，先让它能运行"]
    problems = [*check_docstrings(source), *check_shapes(source), *check_text(source)]
    code, _, _, share = count(source)
    low, high = BANDS[source.kind]
    if code >= BAND_MIN_CODE and not low <= share <= high:
        advice = f"至少 {low}，请补上为什么、形状和陷阱" if share < low else f"至多 {high}，请删去重复代码的注释"
        problems.append((1, "注释量", f"注释比是 {share:.2f}，{advice}"))
    return [f"{name}:{line}　{rule}：{text}" for line, rule, text in sorted(problems)]


def stats(paths):
    """列出每个脚本的注释量。

    参数:
        paths (list[Path]): 脚本

    返回:
        list[str]: 表头和每个脚本一行
    """
    rows = ["  代码  注释  文档  注释比  有文档的函数  脚本"]
    for path in paths:
        source = read(path)
        code, comments, docs, share = count(source)
        functions = [node for node, owner in documented(source) if isinstance(node, ast.FunctionDef) and node is owner]
        done = sum(ast.get_docstring(node) is not None for node in functions)
        name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        rows.append(f"{code:6}{comments:6}{docs:6}{share:8.2f}{f'{done}/{len(functions)}':>14}  {name}")
    return rows


def main():
    """命令行：不带参数检查所有脚本，也可以给出几个文件，或加 --stats 看注释量。"""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")
    options = [argument for argument in sys.argv[1:] if argument.startswith("-")]
    paths = [Path(argument).resolve() for argument in sys.argv[1:] if argument not in options] or scripts()
    wrong = [option for option in options if option not in ("--stats", "-h", "--help")] + [str(path) for path in paths if path.suffix != ".py" or not path.is_file()]
    if wrong:
        print(f"出错了：看不懂 {wrong[0]}，用法：comments.py [--stats] [已有的 .py 文件…]", file=sys.stderr)
        sys.exit(2)
    if options == ["--stats"]:
        print("\n".join(stats(paths)))
    elif options:
        print(__doc__)
    else:
        problems = [problem for path in paths for problem in check(path)]
        print("\n".join(problems) or f"注释没有问题（{len(paths)} 个脚本）")
        sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
