"""沿用与改写：让每个脚本既独立可读，又不会各抄各的、越抄越不一样

章节脚本不导入本项目的其他文件，需要前面的组件就抄一份，放在折叠区里：
    # region 沿用 ch03/main/multihead_attention.py: MultiHeadAttention
    （由本工具生成：与原处相同的代码，文档字符串缩成一行，注释只留形状。不要手改）
    # endregion
    # region 沿用（含注释） ch03/main: MultiHeadAttention
    （由本工具生成：连注释带文档逐字照抄。一章的总结脚本这样用同一章的组件）
    # endregion
    # region 改写 ch03/main: MultiHeadAttention
    （手写：在原处的基础上改动，每处改动用"改："开头的注释说明为什么）
    # endregion
一个折叠区可以沿用几个组件，名字用逗号隔开。原处写一个文件；也可以只写文件夹（如 ch04/main），
工具到里面的 example_*.py 里找每个组件在哪一节讲解，组件的文档里会写明。

运行：
    python setup/copy_forward.py check           # 检查每个沿用区都与原处一致、每处改写都有说明；后面写脚本，就只查它们
    python setup/copy_forward.py write           # 改了原处之后，一条命令更新所有抄写；后面写脚本，就只更新它们
    python setup/copy_forward.py tree            # 谁用了哪个组件
    python setup/copy_forward.py diff 某个脚本   # 它改写了什么（彩色），读实验时最有用
    约 1 秒，0.1 GB（2 核 CPU）
"""

import ast
import difflib
import re
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REGION = re.compile(r"^# region (沿用（含注释）|沿用|改写) (\S+?)/?: (.+)$")
DEFINITION = re.compile(r"(?:class|def) (\w+)|(\w+(?:, \w+)*) = ")
# 字符串或注释，谁先开头算谁：字符串里的 # 不是注释，注释里的引号也不是字符串。比 tokenize 快近十倍。
LITERAL = re.compile(r"""(\"{3}|'{3})(?:\\.|.)*?\1|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|(#[^\n]*)""", re.DOTALL)
SHAPE = re.compile(r"#\s*(\([^()]*\)(?:\s*(?:→|，|或)\s*\([^()]*\))*)")  # 行尾的形状注释，如 # (b, t, d) → (b, h, t, k)、# (n,) 或 ()


def scripts():
    """列出所有参与检查的脚本。

    返回:
        list[Path]: 章节和 setup/ 下的 .py 文件，不含测试、练习和虚拟环境
    """
    found = [*ROOT.glob("ch0*/*/*.py"), *ROOT.glob("appendix-*/*/*.py"), *ROOT.glob("setup/*.py"), *ROOT.glob("setup/checks/*.py")]
    return sorted(path for path in found if path.parent.name not in ("tests", "practice", "outputs"))


@cache  # 原处也要查，一个文件会查几次
def regions(path):
    """找出一个脚本里的沿用区和改写区。

    参数:
        path (Path): 脚本

    返回:
        list[tuple]: 每个区一项：种类、原处（文件或文件夹）、名字列表、开头行号、结尾行号；行号从 0 起，指 region 和 endregion 两行

    异常:
        ValueError: region 和 endregion 不配对，或格式不对
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    result, opened = [], None
    for number, line in enumerate(lines):
        if match := REGION.match(line):
            if opened:
                raise ValueError(f"{path.relative_to(ROOT)}:{number + 1}　上一个 region（第 {opened[3] + 1} 行）还没有 endregion")
            kind, source, names = match.groups()
            opened = (kind, source, [name.strip() for name in names.split(",")], number)
        elif line.startswith("# region"):
            raise ValueError(f"{path.relative_to(ROOT)}:{number + 1}　region 的格式应为：# region 沿用 文件.py: 组件名；沿用也可以是 沿用（含注释） 或 改写，文件也可以是文件夹")
        elif line.startswith("# endregion"):
            if not opened:
                raise ValueError(f"{path.relative_to(ROOT)}:{number + 1}　endregion 前面没有 region")
            result.append((*opened, number))
            opened = None
    if opened:
        raise ValueError(f"{path.relative_to(ROOT)}:{opened[3] + 1}　region 没有配对的 endregion")
    return result


@cache  # 一个文件里常有好几个组件，只分析一次
def parse(text):
    """把一段代码变成语法树，再找出注释和多行字符串。

    参数:
        text (str): 代码

    返回:
        tuple: 语法树；行号 → 注释起始列，要保留的形状；在多行字符串里面的行号

    异常:
        SyntaxError: 不是能运行的 Python
    """
    tree, comments, strings = ast.parse(text), {}, set()
    number, before = 1, 0
    for match in LITERAL.finditer(text):
        number, before = number + text.count("\n", before, match.start()), match.start()
        if comment := match[2]:
            shape = SHAPE.match(comment)
            comments[number] = (before - text.rfind("\n", 0, before) - 1, shape and shape.group(1))
        else:  # 跨行的字符串里，空行是内容，不能删
            strings.update(range(number + 1, number + 1 + match[0].count("\n")))
    return tree, comments, strings


def documented(node):
    """找出一段代码里有文档字符串的类和函数。

    参数:
        node (ast.AST): 语法树，或其中的一条语句

    返回:
        list[ast.AST]: 类和函数，也可以是 node 自己
    """
    found, waiting = [], [node]
    while waiting:  # 只走语句，不走表达式，比 ast.walk 快几倍
        inner = waiting.pop()
        if isinstance(inner, (ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(inner):
            found.append(inner)
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            waiting += getattr(inner, field, [])
    return found


@cache
def originals(source):
    """一个脚本里有哪些组件是原处，即不在沿用区、改写区里。

    参数:
        source (str): 脚本，相对项目根目录

    返回:
        set[str]: 顶层的类、函数和常量的名字
    """
    path = ROOT / source
    inside = {number for *_, start, end in regions(path) for number in range(start, end + 1)}
    # 顶层的定义都顶格写，按行找就够，比分析语法树快得多。
    found = [DEFINITION.match(line) for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()) if number not in inside]
    return {name for match in found if match for name in re.findall(r"\w+", match[1] or match[2])}


@cache
def home(source, name):
    """一个组件在哪个文件里讲解。

    参数:
        source (str): 原处：文件，或文件夹（如 "ch04/main"）；是文件夹时，到里面的 example_*.py 里找
        name (str): 组件的名字

    返回:
        str: 文件，相对项目根目录

    异常:
        ValueError: 文件夹不存在，或里面没有这个组件，或不止一个
    """
    if source.endswith(".py"):
        return source
    if not (ROOT / source).is_dir():
        raise ValueError(f"原处 {source} 不存在")
    scripts = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / source).glob("example_*.py"))]
    found = [script for script in scripts if name in originals(script)]
    if not found:
        raise ValueError(f"{source} 的 example_*.py 里没有 {name}")
    if len(found) > 1:
        raise ValueError(f"{source} 里不止一处定义了 {name}：{'、'.join(found)}，请写明是哪个文件")
    return found[0]


@cache  # 一个组件会被许多脚本沿用，只算一次
def component(source, name, whole=False):
    """从原处取出一个组件，缩成沿用区里的样子。

    类和函数的文档字符串只留第一句（方法的整个去掉），注释只留行尾的形状，函数里的空行去掉。

    参数:
        source (str): 原处，相对项目根目录，如 "ch03/main/multihead_attention.py" 或 "ch04/main"
        name (str): 类、函数或顶层常量的名字
        whole (bool): True 表示连注释带文档逐字照抄，不缩短

    返回:
        str: 缩短后的代码，末尾没有换行

    异常:
        ValueError: 原处不存在或有语法错误，或里面没有这个组件，或那里的也是抄来的
    """
    try:
        source = home(source, name)
        path = ROOT / source
        if not path.is_file():
            raise ValueError(f"原处 {source} 不存在")
        text = path.read_text(encoding="utf-8")
        tree, comments, strings = parse(text)
    except SyntaxError as error:
        raise ValueError(f"{source} 第 {error.lineno} 行有语法错误，先让它能运行") from None
    node = next((node for node in tree.body if name in names_of(node)), None)
    if node is None:
        raise ValueError(f"{source} 里没有 {name}")
    if any(start < node.lineno <= end for *_, start, end in regions(path)):
        raise ValueError(f"{source} 里的 {name} 也是抄来的，请写最初讲解它的那个文件")

    first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
    if whole:
        lines = text.splitlines()
        while lines[first - 2].startswith("# ") and not lines[first - 2].startswith(("# %%", "# region", "# endregion")):
            first -= 1  # 紧挨在上面的整行注释，也是它的
        return "\n".join(lines[first - 1 : node.end_lineno])
    docstrings = {}  # 起始行 → 结束行，换成什么
    for inner in documented(node):
        doc = inner.body[0]
        first_line = ast.get_docstring(inner).splitlines()[0] + (f"（详解见 {source}）" if inner is node else "")
        keep = inner is node or len(inner.body) == 1  # 方法里除了文档什么都没有时，去掉它就不成语法了
        docstrings[doc.lineno] = (doc.end_lineno, f'{" " * doc.col_offset}"""{first_line}"""' if keep else None)

    lines, result, number = text.splitlines(), [], first
    while number <= node.end_lineno:
        if number in docstrings:
            number, replacement = docstrings[number]
            if replacement:
                result.append(replacement)
        else:
            line = lines[number - 1]
            if number in comments:
                column, shape = comments[number]
                code = line[:column].rstrip()
                line = f"{code}  # {shape}" if code and shape else code
            if line.strip() or number in strings:
                # 方法之间（以及文档字符串与第一个方法之间）留一个空行，其余空行去掉。
                if number not in strings and result and re.match(r" {4}(def|@)", line) and not result[-1].lstrip().startswith("@"):
                    result.append("")
                result.append(line)
        number += 1
    return "\n".join(result)


def names_of(node):
    """一条顶层语句定义了哪些名字。

    参数:
        node (ast.AST): 顶层语句

    返回:
        list[str]: 类名、函数名或被赋值的名字；都不是时为空
    """
    if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []


def expected(source, names, kind="沿用"):
    """沿用区里应有的全部代码。

    参数:
        source (str): 原处
        names (list[str]): 组件名
        kind (str): 区的种类；"沿用（含注释）" 时不缩短

    返回:
        str: 各组件的代码，类和函数之间空两行
    """
    return "\n\n\n".join(component(source, name, kind == "沿用（含注释）") for name in names)


def code_lines(text):
    """去掉文档字符串、注释和空行，只留代码，用来比较两段代码。

    参数:
        text (str): 一段顶层代码

    返回:
        list[tuple[str, int]]: 去掉注释的代码行，和它的行号（从 0 起）
    """
    tree, comments, _ = parse(text)
    skipped = set()
    for inner in documented(tree):
        skipped.update(range(inner.body[0].lineno, inner.body[0].end_lineno + 1))
    lines = enumerate(text.splitlines(), start=1)
    cleaned = [(line[: comments.get(number, [None])[0]].rstrip(), number - 1) for number, line in lines if number not in skipped]
    return [(line, number) for line, number in cleaned if line]


def unexplained_changes(original, changed):
    """找出改写区里没有用"改："说明的改动。

    参数:
        original (str): 原处的代码
        changed (str): 改写区里的代码

    返回:
        list[int]: 每处没有说明的改动的行号，从 0 起，相对改写区
    """
    before, after, raw = code_lines(original), code_lines(changed), changed.splitlines()
    matcher = difflib.SequenceMatcher(None, [line for line, _ in before], [line for line, _ in after], autojunk=False)
    missing = []
    for tag, _, _, start, end in matcher.get_opcodes():
        if tag == "equal":
            continue
        # 说明可以写在改动的行尾，也可以写在它前后紧挨着的整行注释里；删掉的行，说明写在删除处的前后。
        top = after[start - 1][1] + (0 if start == end else 1) if start else 0
        bottom = after[end][1] if end < len(after) else len(raw)
        if not any("改：" in line for line in raw[top:bottom]):
            missing.append(after[start][1] if start < len(after) else len(raw) - 1)
    return missing


def check(paths=None):
    """检查沿用区和改写区。

    参数:
        paths (list[Path] 或 None): 只查这几个脚本；None 表示全部

    返回:
        list[str]: 每个问题一行，写明文件、行号和说明
    """
    problems = []
    for path in paths or scripts():
        name = path.relative_to(ROOT)
        try:
            found = regions(path)
        except ValueError as error:
            problems.append(str(error))
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        for kind, source, names, start, end in found:
            try:
                want = expected(source, names, kind)
            except ValueError as error:
                problems.append(f"{name}:{start + 1}　{error}")
                continue
            have = "\n".join(lines[start + 1 : end])
            if kind != "改写" and have.strip("\n") != want:
                problems.append(f"{name}:{start + 1}　{', '.join(names)} 与原处 {source} 不一致：请改原处，再运行 copy_forward.py write")
            if kind == "改写":
                try:
                    defined = {defined for node in parse(have)[0].body for defined in names_of(node)}
                except SyntaxError as error:
                    problems.append(f"{name}:{start + 1 + (error.lineno or 1)}　改写区里有语法错误，先让它能运行")
                    continue
                problems += [f"{name}:{start + 1}　改写区里没有 {missing}" for missing in names if missing not in defined]
                unexplained = unexplained_changes(want, have)
                problems += [f"{name}:{start + 2 + offset}　改动没有说明：在这一行加上以「改：」开头的注释" for offset in unexplained]
                if not unexplained and [line for line, _ in code_lines(want)] == [line for line, _ in code_lines(have)]:
                    problems.append(f"{name}:{start + 1}　代码与原处完全相同，应写成沿用")
    return problems


def write(paths=None):
    """按原处重新生成沿用区。

    参数:
        paths (list[Path] 或 None): 只更新这几个脚本；None 表示全部

    返回:
        list[str]: 更新了哪些文件

    异常:
        ValueError: 原处不存在或没有要沿用的组件
    """
    updated = {}  # 全部算完再写：中途出错时，一个文件都不动
    for path in paths or scripts():
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        for kind, source, names, start, end in reversed(regions(path)):  # 从后往前换，前面的行号才不会变
            if kind != "改写":
                want = expected(source, names, kind)
                last = component(source, names[-1])
                lines[start + 1 : end] = [*want.splitlines(), *(["", ""] if re.match(r"(class|def|@)", last) else [])]
        new = "\n".join(lines) + "\n"
        if new != text:
            updated[path] = new
    for path, new in updated.items():
        path.write_text(new, encoding="utf-8")
    return [str(path.relative_to(ROOT)) for path in updated]


def tree():
    """画出谁用了哪个组件。

    返回:
        list[str]: 每个组件一行，下面缩进列出用它的脚本
    """
    users = {}
    for path in scripts():
        for kind, source, names, *_ in regions(path):
            for name in names:
                users.setdefault((home(source, name), name), []).append(f"    {kind}　{path.relative_to(ROOT)}")
    return [line for (source, name), places in sorted(users.items()) for line in [f"{name}（{source}）", *places]]


def diff(path):
    """列出一个脚本的改写区与原处的差别。

    参数:
        path (Path): 脚本

    返回:
        list[str]: 统一格式的差异，删去的行红色，新加的行绿色

    异常:
        ValueError: 这个脚本没有改写区
    """
    lines, result = path.read_text(encoding="utf-8").splitlines(), []
    for kind, source, names, start, end in regions(path):
        if kind == "改写":
            changed = "\n".join(lines[start + 1 : end]).strip("\n").splitlines()
            result.append(f"\n{', '.join(names)}　原处 {source}")
            for line in list(difflib.unified_diff(expected(source, names).splitlines(), changed, lineterm="", n=2))[2:]:
                color = {"+": "\033[32m", "-": "\033[31m", "@": "\033[36m"}.get(line[0], "")
                result.append(f"{color}{line}\033[0m" if color and sys.stdout.isatty() else line)
    if not result:
        raise ValueError(f"{path.name} 里没有改写区")
    return result


def main():
    """命令行：check、write、tree 或 diff 脚本。"""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="namereplace")
    command, *rest = sys.argv[1:] or ["--help"]
    try:
        paths = [Path(each).resolve() for each in rest]
        named = all(path.is_file() and path.is_relative_to(ROOT) for path in paths)
        if command == "check" and named:
            problems = check(paths)
            print("\n".join(problems) if problems else f"沿用与改写都没有问题（{len(paths or scripts())} 个脚本）")
            sys.exit(1 if problems else 0)
        elif command == "write" and named:
            updated = write(paths)
            print("\n".join(f"已更新 {path}" for path in updated) or "所有沿用区都已是最新")
        elif command == "tree" and not rest:
            print("\n".join(tree()))
        elif command == "diff" and len(rest) == 1 and Path(rest[0]).is_file():
            print("\n".join(diff(Path(rest[0]).resolve())))
        elif command in ("-h", "--help"):
            print(__doc__)
        else:
            raise ValueError(f"看不懂 {' '.join(sys.argv[1:])}，用法：copy_forward.py check [脚本…] | write [脚本…] | tree | diff 脚本路径")
    except ValueError as error:
        print(f"出错了：{error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
