"""手敲练习的刀：从原文里切出练习文件，再看一眼学习者的文件写全了没有

这里只读源代码（语法树和记号），不导入 torch，所以列清单、出题、查语法都是立刻的。
"""

import ast
import importlib.util
import io
import os
import re
import sys
import textwrap
import tokenize
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "setup"))
import copy_forward  # noqa: E402　沿用区的写法与别的脚本一样，由它生成

HOME = Path(os.environ.get("LLM_PRACTICE_DIR") or ROOT)  # 练习和记录写在哪里；默认就在项目里
CASES = ROOT / "setup" / "practice_cases"
ORDER = ["ch02", "ch03", "ch04", "ch05", "ch06", "ch07", "appendix_a"]
LEVELS = {1: "填空", 2: "看着步骤写", 3: "看着签名和形状写", 4: "只看题目写"}
BLANK = "____"
STEP = re.compile(r"#\s*([①②③④⑤⑥⑦⑧⑨⑩⑪⑫⑬⑭⑮])")
TODO = "raise NotImplementedError"


class Component:
    """一个要敲的组件：practice_cases 里的一项，加上它的原文。

    参数:
        spec (dict): practice_cases 里的那个字典
        order (int): 学习次序，从 0 起
    """

    def __init__(self, spec, order):
        defaults = {"needs": [], "extra": {}, "blanks": [], "cases": [], "mutants": [], "task": ""}
        self.spec, self.order = {**defaults, **spec}, order
        for key in ("name", "title", "section", "parts", "needs", "task", "blanks", "cases", "mutants"):
            setattr(self, key, self.spec[key])
        self.chapter = self.spec["source"].split("/")[0]
        self.place = f"{self.section} 节" if self.section[0].isalnum() and self.section.isascii() else self.section  # 实验没有节号

    @cached_property
    def source(self):
        """讲解它的脚本；practice_cases 里可以只写文件夹，如 "ch04/main"。

        返回:
            str: 文件，相对项目根目录

        异常:
            ValueError: 那个文件夹的 example_*.py 里没有它
        """
        return copy_forward.home(self.spec["source"], self.parts[0])

    @cached_property
    def extra(self):
        """直接给学习者的常量和函数。

        返回:
            dict[str, str]: 名字 → 讲解它的脚本
        """
        return {name: copy_forward.home(source, name) for name, source in self.spec["extra"].items()}

    @property
    def path(self):
        """学习者的练习文件。

        返回:
            Path: 还没有出题时不存在
        """
        return HOME / self.chapter / "practice" / f"{self.name}.py"

    @cached_property
    def text(self):
        """原文里只留要敲的几段，其余的行都变成空行：行号与原文件相同，报告才指得准。

        返回:
            str: 代码

        异常:
            ValueError: 原文不存在，或里面没有这个组件
        """
        path = ROOT / self.source
        if not path.is_file():
            raise ValueError(f"{self.name}：原文 {self.source} 不存在")
        lines = path.read_text(encoding="utf-8").splitlines()
        found = {name: node for node in ast.parse("\n".join(lines)).body for name in copy_forward.names_of(node)}
        missing = [name for name in self.parts if name not in found]
        if missing:
            raise ValueError(f"{self.name}：{self.source} 里没有 {'、'.join(missing)}")
        keep = set()
        for name in self.parts:
            keep.update(range(first_line(found[name]), found[name].end_lineno + 1))
        return "\n".join(line if number in keep else "" for number, line in enumerate(lines, start=1)) + "\n"

    @cached_property
    def body(self):
        """要敲的几段原文，之间空两行，没有多余的空行。

        返回:
            str: 代码
        """
        tree = ast.parse(self.text)
        lines = self.text.splitlines()
        return "\n\n\n".join("\n".join(lines[first_line(node) - 1 : node.end_lineno]) for node in tree.body)


def first_line(node):
    """一个定义从哪一行开始，装饰器也算。

    参数:
        node (ast.AST): 类或函数

    返回:
        int: 行号，从 1 起
    """
    return min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])


def load(path):
    """导入一个 practice_cases 文件。

    参数:
        path (Path): 文件

    返回:
        list[dict]: 里面的 COMPONENTS

    异常:
        ValueError: 文件有错，或没有 COMPONENTS
    """
    spec = importlib.util.spec_from_file_location(f"practice_cases_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return module.COMPONENTS
    except Exception as error:
        raise ValueError(f"{path.relative_to(ROOT)} 读不进来：{type(error).__name__}: {error}") from None


@cache
def components():
    """所有组件，按学习次序。

    返回:
        dict[str, Component]: 名字到组件

    异常:
        ValueError: 某个文件有错，或两个组件重名
    """
    found = {}
    stems = sorted((path.stem for path in CASES.glob("*.py")), key=lambda stem: (ORDER.index(stem) if stem in ORDER else len(ORDER), stem))
    for stem in stems:
        for spec in load(CASES / f"{stem}.py"):
            if spec["name"] in found:
                raise ValueError(f"两个组件都叫 {spec['name']}")
            found[spec["name"]] = Component(spec, len(found))
    return found


def find(text):
    """按名字、名字的开头、中文标题找一个组件。

    参数:
        text (str): 学习者打的字，大小写都行

    返回:
        Component: 组件

    异常:
        ValueError: 没有，或不止一个
    """
    everything, low = list(components().values()), text.lower()
    for matches in (
        [c for c in everything if c.name == text],
        [c for c in everything if low in (c.name.lower(), c.title.lower())],
        [c for c in everything if c.name.lower().startswith(low) or c.title.lower().startswith(low)],
        [c for c in everything if low in c.title.lower() or low in c.name.lower()],
    ):
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise ValueError(f"{text} 可以指 {'、'.join(f'{c.name}（{c.title}）' for c in matches[:6])}{' 等' if len(matches) > 6 else ''}，请多打几个字")
    raise ValueError(f"没有叫 {text} 的组件，用 python setup/practice.py list 看全部")


def all_needs(component):
    """一个组件需要的全部组件：连"需要的需要"也算，按学习次序。

    参数:
        component (Component): 组件

    返回:
        list[Component]: 不含它自己

    异常:
        ValueError: needs 里的名字不存在
    """
    found, waiting = {}, [component]
    while waiting:
        for name in waiting.pop().needs:
            if name not in components():
                raise ValueError(f"{component.name} 需要 {name}，但没有这个组件")
            if name not in found and name != component.name:
                found[name] = components()[name]
                waiting.append(found[name])
    return sorted(found.values(), key=lambda each: each.order)


# ── 出题 ──


def regions(component):
    """沿用区：需要的组件和常量，不用学习者敲。

    参数:
        component (Component): 组件

    返回:
        str: 一个或几个沿用区；没有则为空
    """
    wanted = {}  # 原处 → 名字；同一个文件里的放在一个区
    needs = all_needs(component)
    for name, source in [pair for each in [*needs, component] for pair in each.extra.items()]:
        wanted.setdefault(source, []).append(name)
    for each in needs:
        wanted.setdefault(each.source, []).extend(each.parts)
    blocks = []
    for source, names in wanted.items():
        names = [name for name in dict.fromkeys(names) if not (source == component.source and name in component.parts)]
        blocks += [f"# region 沿用 {source}: {', '.join(names)}\n{copy_forward.expected(source, names)}\n# endregion"] if names else []
    return "\n\n\n".join(blocks)


def imports(component, copied):
    """练习文件需要的导入：从各个原文里挑出用得着的。

    参数:
        component (Component): 组件
        copied (str): 沿用区的代码

    返回:
        str: 导入语句，每条一行
    """
    used = {node.id for code in (component.text, copied) for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
    sources = [component.source, *component.extra.values(), *(source for each in all_needs(component) for source in [each.source, *each.extra.values()])]
    standard, others = [], []
    for source in dict.fromkeys(sources):
        for node in ast.parse((ROOT / source).read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                node.names = [alias for alias in node.names if (alias.asname or alias.name.split(".")[0]) in used]
                if node.names:
                    module = (getattr(node, "module", None) or node.names[0].name).split(".")[0]
                    (standard if module in sys.stdlib_module_names else others).append(ast.unparse(node))
    return "\n\n".join("\n".join(dict.fromkeys(block)) for block in (standard, others) if block)


def hidden(text):
    """注释和文档字符串占了哪些字符：那里的字不算代码。

    参数:
        text (str): 代码

    返回:
        list[tuple[int, int]]: 每段的起点和终点
    """
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    spans = [(starts[t.start[0] - 1] + t.start[1], starts[t.end[0] - 1] + t.end[1]) for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.COMMENT]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            spans.append((starts[node.body[0].lineno - 1], starts[node.body[0].end_lineno]))
    return spans


def occurrences(text, wanted):
    """一段代码在原文里出现在哪里，不算注释和文档里的。

    参数:
        text (str): 原文
        wanted (str): 要找的代码

    返回:
        list[int]: 起点
    """
    spans = hidden(text)
    return [m.start() for m in re.finditer(re.escape(wanted), text) if not any(start <= m.start() < end for start, end in spans)]


def blanked(component):
    """第 1 级：挖空。

    参数:
        component (Component): 组件

    返回:
        tuple[str, list[str], list[str]]: 挖了空的代码；从上到下每个空的答案；挖不了的表达式（挖了就不是合法的 Python）
    """
    text, answers, wrong = component.body, [], []
    for expression in sorted(component.blanks, key=len, reverse=True):  # 长的先挖，短的就不会挖在长的里面
        forms = ["{0}", "{0}={0}"]  # 关键字参数 f(x, dim=-1) 挖成 f(x, ____) 也许不合语法，改成 f(x, ____=____)
        for form in forms:
            trial = text
            for start in reversed(occurrences(text, expression)):
                trial = f"{trial[:start]}{form.format(f'{BLANK}{len(answers)}{BLANK}')}{trial[start + len(expression) :]}"
            try:
                ast.parse(trial)
            except SyntaxError:
                continue
            if trial != text:
                text = trial
                answers.append(expression)
            else:
                wrong.append(expression)
            break
        else:
            wrong.append(expression)
    marks = re.compile(rf"{BLANK}(\d+){BLANK}(?:={BLANK}\1{BLANK})?")
    ordered = [answers[int(match[1])] for match in marks.finditer(text)]
    return marks.sub(lambda match: f"{BLANK}={BLANK}" if "=" in match[0] else BLANK, text), ordered, wrong


def skeleton(component, level):
    """第 2、3 级：留下签名和文档，去掉函数的内容；第 2 级还留着步骤。

    参数:
        component (Component): 组件
        level (int): 2 或 3

    返回:
        str: 骨架，仍是合法的 Python
    """
    text = component.body
    lines, result = text.splitlines(), []
    tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    comments = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}

    def function(node):
        header = next(token.start[0] for token in tokens if token.type == tokenize.NEWLINE and token.start[0] >= node.lineno)  # 签名也许占几行
        result.extend(lines[first_line(node) - 1 : header])
        body, indent = node.body, " " * (node.col_offset + 4)
        start = header + 1
        if ast.get_docstring(node):
            result.extend(lines[body[0].lineno - 1 : body[0].end_lineno])
            start = body[0].end_lineno + 1
        inside = [number for number in range(start, node.end_lineno + 1) if number in comments]
        own = [number for number in inside if lines[number - 1].lstrip().startswith("#")]
        numbered = any(STEP.match(comments[number].string) for number in own)
        keep = False
        for number in inside:
            mark = comments[number].string
            if number in own:
                # 步骤的说明可以占几行：紧跟在 ① 后面的注释也是它的。没有编号的函数，整行的注释就是步骤。
                keep = level == 2 and (not numbered or bool(STEP.match(mark)) or keep and number - 1 in own)
                if keep:
                    result.append(indent + mark)
            else:
                keep = False
                shape = copy_forward.SHAPE.match(mark)
                statement = innermost(node, number)
                if shape and isinstance(statement, (ast.Assign, ast.AugAssign, ast.Return)):
                    target = "返回" if isinstance(statement, ast.Return) else ast.unparse(statement.targets[0] if isinstance(statement, ast.Assign) else statement.target)
                    more = mark[shape.end() :].rstrip() if level == 2 else ""  # 第 2 级连形状后面的那句话也留着
                    before = re.fullmatch(rf"{indent}# (\S+)　{re.escape(shape[1])}", result[-1])
                    if before and not more:  # 形状相同的连着几行，合成一行
                        result[-1] = f"{indent}# {before[1]}、{target}　{shape[1]}"
                    else:
                        result.append(f"{indent}# {target}　{shape[1]}{more}")
                elif level == 2 and not numbered and not shape:
                    result.append(indent + mark)  # 没有 ①②③ 的函数，行尾的话就是步骤
        result.append(f"{indent}{TODO}  # 在这里敲，敲完删掉这一行")

    for node in ast.parse(text).body:
        if result:
            result += ["", ""]
        if isinstance(node, ast.ClassDef):
            members = [member for member in node.body if isinstance(member, ast.FunctionDef)]
            plain = [member for member in node.body if member not in members]
            header = next(token.start[0] for token in tokens if token.type == tokenize.NEWLINE and token.start[0] >= node.lineno)
            result += lines[first_line(node) - 1 : header]
            for member in plain:
                result += lines[member.lineno - 1 : member.end_lineno]
            for member in members:
                result.append("")
                function(member)
        elif isinstance(node, ast.FunctionDef):
            function(node)
        else:
            result += lines[node.lineno - 1 : node.end_lineno]
    return "\n".join(result)


def innermost(function, line):
    """某一行属于哪条语句，取最里面的。

    参数:
        function (ast.FunctionDef): 函数
        line (int): 行号

    返回:
        ast.stmt 或 None: 语句
    """
    inside = [node for node in ast.walk(function) if isinstance(node, ast.stmt) and node.lineno <= line <= node.end_lineno]
    return min(inside, key=lambda node: node.end_lineno - node.lineno, default=None)


def preamble(component):
    """导入和沿用区：所有级别都一样。

    参数:
        component (Component): 组件

    返回:
        str: 代码
    """
    copied = regions(component)
    return "\n\n\n".join(part for part in (imports(component, copied), copied) if part)


def practice_text(component, level, answer=None):
    """生成一个练习文件。

    参数:
        component (Component): 组件
        level (int): 1 到 4
        answer (str): 不出题，直接放这段代码；测试时用它放标准答案

    返回:
        str: 整个文件
    """
    task = "\n".join(line for sentence in re.findall(r"[^。]*。|[^。]+$", component.task) for line in textwrap.wrap(sentence.strip(), 100))
    body = {1: lambda: blanked(component)[0], 2: lambda: skeleton(component, 2), 3: lambda: skeleton(component, 3), 4: lambda: f"# 从这里开始敲：{'、'.join(component.parts)}\n"}[level]()
    parts = [
        f'"""手敲练习　{component.name}　{component.title}（{component.place}，第 {level} 级：{LEVELS[level]}）\n\n{task}\n\n'
        f"写完保存，在终端里检查：python setup/practice.py check {component.name}\n在 VS Code 里运行这个文件，也是检查。\n\"\"\"",
        preamble(component),
        f"{BLANK} = None  # 每个 {BLANK} 换成你的代码；这一行不用动" if level == 1 else "",
        body if answer is None else answer,
        'if __name__ == "__main__":\n    import subprocess\n    import sys\n    from pathlib import Path\n\n'
        '    tool = next((p / "setup" / "practice.py" for p in Path(__file__).resolve().parents if (p / "setup" / "practice.py").is_file()), "setup/practice.py")\n'
        f'    sys.exit(subprocess.run([sys.executable, str(tool), "check", "{component.name}"]).returncode)',
    ]
    return "\n\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def level_of(text):
    """练习文件是第几级，写在它的第一行。

    参数:
        text (str): 练习文件

    返回:
        int: 级别；看不出来时算 4（没有任何提示）
    """
    match = re.search(r"第 ([1-4]) 级", text[:400])
    return int(match[1]) if match else 4


def hints(component):
    """一条一条的提示，越往后越具体。

    参数:
        component (Component): 组件

    返回:
        list[str]: 每一步的说明，形状，最后是几个关键的表达式
    """
    found = []  # 题目不算提示：出题的时候已经给了
    lines, previous = component.body.splitlines(), None
    for number, token in {t.start[0]: t for t in tokenize.generate_tokens(io.StringIO(component.body).readline) if t.type == tokenize.COMMENT}.items():
        mark = token.string.lstrip("# ").rstrip()
        if not lines[number - 1].lstrip().startswith("#"):
            said = copy_forward.SHAPE.sub("", token.string).lstrip("# 　")
            found += [f"步骤：{said}"] if said else []
            continue
        if previous == number - 1 and not STEP.match(token.string):
            found[-1] += mark
        else:
            found.append(f"步骤：{mark}")
        previous = number
    shapes = [line.strip() for line in skeleton(component, 3).splitlines() if re.match(r"\s*# .*　\(", line)]
    if shapes:
        found.append("形状：" + "；".join(line.lstrip("# ") for line in shapes))
    return found + [f"代码里会出现：{expression}" for expression in component.blanks]


# ── 不运行就能看出的毛病 ──


def trouble(kind, message, line=None, advice=""):
    """一条毛病。

    参数:
        kind (str): 哪一类，如 syntax、blank
        message (str): 一句中文
        line (int): 在学习者文件的第几行
        advice (str): 怎么办

    返回:
        dict: 可以转成 JSON
    """
    return {"ok": False, "kind": kind, "message": message, "line": line, "advice": advice}


def inspect(component, text):
    """不运行，先看文件写全了没有：空、语法、占位、缺定义、签名。

    参数:
        component (Component): 组件
        text (str): 学习者的文件

    返回:
        tuple[dict 或 None, list[str]]: 必须先改的毛病，没有则为 None；只是提醒的话
    """
    import warnings

    import explain

    lines = text.splitlines()
    empty = [number for number, line in enumerate(lines, start=1) if BLANK in code_part(line) and not line.startswith(f"{BLANK} = ")]
    if empty:
        shown = "、".join(map(str, empty[:8])) + (" …" if len(empty) > 8 else "")
        count = sum(len(re.findall(rf"{BLANK}(?:={BLANK})?", code_part(lines[number - 1]))) for number in empty)
        return trouble("blank", f"还有 {count} 个 {BLANK} 没有填，在第 {shown} 行", empty[0], "想不起来就用 hint 要一条提示"), []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 例如 "\d" 的转义警告，与这里无关
            tree = ast.parse(text)
            compile(text, "practice", "exec")
    except SyntaxError as error:
        return trouble("syntax", f"语法不对，Python 读不下去：{explain.syntax(error, lines)}", error.lineno, ""), []
    except (ValueError, RecursionError, MemoryError) as error:
        return trouble("syntax", f"Python 读不了这个文件：{error}"), []
    mine = {name: node for node in tree.body for name in copy_forward.names_of(node)}
    theirs = {name: node for node in ast.parse(component.text).body for name in copy_forward.names_of(node)}
    missing = [name for name in component.parts if name not in mine]
    if missing:
        copied = set().union(*({*each.parts, *each.extra} for each in [*all_needs(component), component]))
        other = [name for name in mine if name not in copied and name != BLANK]
        close = next((name for name in other if name.lower().replace("_", "") == missing[0].lower().replace("_", "")), None)
        kind = "类" if isinstance(theirs[missing[0]], ast.ClassDef) else "函数"
        advice = f"名字要一字不差：你写的是 {close}" if close else (f"文件里现在定义了 {'、'.join(other[:5])}" if other else "从 class 或 def 那一行敲起；不要缩进")
        return trouble("missing", f"没有找到{kind} {'、'.join(missing)}", mine[close].lineno if close else None, advice), []
    todo = [number for number, line in enumerate(lines, start=1) if code_part(line).strip().startswith(TODO)]
    if todo and TODO not in component.text:
        return trouble("todo", f"第 {'、'.join(map(str, todo[:8]))} 行还是 {TODO}，那里还没有写", todo[0], "写好之后，把这一行删掉"), []
    notes = []
    for name in component.parts:
        problem = compare_definitions(theirs[name], mine[name], name, notes)
        if problem:
            return problem, notes
    return None, notes


def code_part(line):
    """一行里注释之前的部分（字符串里有 # 时不准，但只用来找占位，够了）。

    参数:
        line (str): 一行

    返回:
        str: 代码
    """
    return line.split("#")[0]


def compare_definitions(theirs, mine, name, notes):
    """签名对不对：方法齐不齐，参数叫什么、几个、谁有默认值。

    参数:
        theirs (ast.AST): 原文的定义
        mine (ast.AST): 学习者的定义
        name (str): 显示用的名字
        notes (list[str]): 不影响结果的差别，加在这里

    返回:
        dict 或 None: 毛病
    """
    if type(theirs) is not type(mine):
        want = "类（class）" if isinstance(theirs, ast.ClassDef) else "函数（def）"
        return trouble("signature", f"{name} 应该是一个{want}", mine.lineno)
    if isinstance(theirs, ast.ClassDef):
        ours = {member.name: member for member in theirs.body if isinstance(member, ast.FunctionDef)}
        yours = {member.name: member for member in mine.body if isinstance(member, ast.FunctionDef)}
        for method, node in ours.items():
            if method not in yours:
                if method.startswith("_") and not method.startswith("__"):
                    continue
                near = next((other for other in yours if other.strip("_").lower() == method.strip("_").lower()), None)
                return trouble("signature", f"{name} 少了方法 {method}", mine.lineno, f"你写的是 {near}" if near else "看看它是不是缩进到 class 里面了")
            problem = compare_definitions(node, yours[method], f"{name}.{method}", notes)
            if problem:
                return problem
        bases = {ast.unparse(base) for base in theirs.bases}
        if bases and not mine.bases:
            return trouble("signature", f"{name} 要继承 {'、'.join(bases)}：class {name}({'、'.join(bases)}):", mine.lineno)
        return None
    if not isinstance(theirs, ast.FunctionDef):
        return None
    ours, yours = (ast.unparse(node.args) for node in (theirs, mine))
    if ours == yours:
        return None
    names = [[a.arg for a in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]] for node in (theirs, mine)]
    flexible = mine.args.vararg or mine.args.kwarg or theirs.args.vararg or theirs.args.kwarg
    required = [len(node.args.posonlyargs) + len(node.args.args) - len(node.args.defaults) for node in (theirs, mine)]
    called_by_name = not name.endswith((".forward", ".__call__", ".__getitem__"))  # forward 的参数叫什么不要紧，个数要紧
    wrong_names = called_by_name and names[0] != names[1][: len(names[0])]
    if not flexible and (wrong_names or len(names[1]) < len(names[0]) or required[1] > required[0]):
        return trouble("signature", f"{name} 的参数是 ({yours})，应该是 ({ours})", mine.lineno, "参数的名字和次序用原书的，别的组件才调用得了")
    notes.append(f"{name} 的参数是 ({yours})，原文是 ({ours})")
    return None


def segment(text, names):
    """从学习者的文件里取出几个定义，和它们用到的、学习者自己写的其他定义。

    参数:
        text (str): 学习者的文件
        names (list[str]): 要取的组件

    返回:
        tuple[dict[str, str], list[str], list[str]]: 名字到代码；自己加的辅助定义；导入语句
    """
    tree, lines = ast.parse(text), text.splitlines()
    inside, copied = False, set()
    for number, line in enumerate(lines, start=1):
        inside = inside or line.startswith("# region")
        if inside:
            copied.add(number)
        inside = inside and not line.startswith("# endregion")
    defined, others, imported = {}, {}, []
    for node in tree.body:
        code = "\n".join(lines[first_line(node) - 1 : node.end_lineno])
        if isinstance(node, (ast.Import, ast.ImportFrom)) and getattr(node, "module", "") != "__future__":
            imported.append(ast.unparse(node))
        for name in copy_forward.names_of(node):
            if name in names:
                defined[name] = code
            elif node.lineno not in copied and name != BLANK:
                others[name] = code
    used, waiting = [], list(defined.values())
    while waiting:  # 只要用得着的：学习者在文件里随手写的试验，不该混进来
        words = set(re.findall(r"\w+", waiting.pop()))
        for name in [name for name in others if name in words and name not in used]:
            used.append(name)
            waiting.append(others[name])
    helpers = [code for name, code in others.items() if name in used]
    return defined, list(dict.fromkeys(helpers)), imported
