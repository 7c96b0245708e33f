"""边读边看之一：把一个脚本拆成页面要的样子（开头、小节、说明与代码、沿用区和改写区）

只读源代码，不运行脚本，也不管画成什么样；由 setup/read.py 调用，画页面的是旁边的 render.py。
一节（section）是一格 `# %%`；没有格的脚本，顶层的每个类和函数是一节。一节里是一条条的块：
    行（row）　　左边几段说明，右边它们解释的几行代码
    区（region）　沿用区或改写区，里面又是行

运行：
    python -m doctest setup/read_site/extract.py        # 没有输出就是都对
    约 1 秒，0.1 GB（2 核 CPU）
"""

import ast
import re
import sys
import unicodedata
from functools import cache
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import copy_forward

ROOT = copy_forward.ROOT
LABEL = re.compile(r"(读完[^：]*|题目|先想|问题|先猜|看点|动手改|解法|学到|运行|形状记号[^：]*|陷阱|先说清楚|没有做的)：[　 ]*(.*)")
LETTER = re.compile(r"(?:^|[　\s]|：)([A-Za-z]\w?)(?:、([A-Za-z]))? ([^　\s][^　]*)")
COST = re.compile(r"^ *(.*约 .*核 CPU.*)$", re.MULTILINE)
HEAD = re.compile(r"(参数|形状|返回|异常|出处|示例):\s*(.*)")
FIELD = re.compile(r"([\w*, .、\[\]|]+?)(?: \(([^()]*(?:\([^()]*\)[^()]*)*)\))?: (.*)")
SHAPE = re.compile(r"((?:[三两四]个 |各 |都是 )?\([^()]*\)(?:\s*(?:→|，|或|=)\s*\([^()]*\))*)(?:[　\s]+|$)(.*)")
CHINESE = re.compile(r"[\u4e00-\u9fff]")
ITEM = re.compile(r"([①-⑳]|\d+\.|[-·])\s*(.*)")
CIRCLED = set("①②③④⑤⑥⑦⑧⑨⑩")
WIDE = 78  # 一行代码连同行尾注释不超过这么宽、注释又短，就留在代码旁边，不搬到左边
SHORT = 26


def width(text):
    """一段文字占几列：汉字和全角标点算两列。

    参数:
        text (str): 文字

    返回:
        int: 列数

    示例:
        >>> width("k 是头数")
        8
    """
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def join(lines):
    """把几行接成一段：汉字之间不加空格，英文之间、汉字与英文之间加一个；上一行没写满、又没有标点（公式、小标题），就另起一行。

    参数:
        lines (list[str]): 已经去掉 # 和缩进

    返回:
        str: 一段话；另起一行的地方是换行符

    示例:
        >>> join(["先说为什么，", "再算"])
        '先说为什么，再算'
        >>> join(["x 是一个很长的英文句子 made of words", "that go on"])
        'x 是一个很长的英文句子 made of words\\nthat go on'
    """
    text = last = ""
    for line in lines:
        if text and width(last) < (84 if last[-1:].isascii() else 24) and not re.search(r"[，。；：？！、）」”)…,;:]$", last):
            text += "\n"
        elif text and not (glued(text[-1]) or glued(line[:1])) and (width(text[-1]) == 1 or width(line[:1]) == 1):
            text += " "
        text, last = text + line, line
    return text


def glued(letter):
    """是不是全角标点：它旁边从不加空格。"""
    return width(letter) == 2 and not letter.isalnum()


def paragraphs(lines):
    """把一段段连着的文字行分成自然段、条目和照原样的图。

    参数:
        lines (list[str]): 去掉了 # 的行，缩进留着

    返回:
        list[tuple]: 每段一项：种类（text 自然段、item 条目、pre 照原样）、条目的记号、文字

    示例:
        >>> paragraphs(["① 打分：", "   点积越大越相关。", "② 归一化。"])
        [('item', '①', '打分：点积越大越相关。'), ('item', '②', '归一化。')]
        >>> paragraphs(["第一句，", "接着说。", "", "另一段。"])
        [('text', '', '第一句，接着说。'), ('text', '', '另一段。')]
        >>> paragraphs(["看三处：① 甲；② 乙。"])
        [('text', '', '看三处：'), ('item', '①', '甲；'), ('item', '②', '乙。')]
        >>> paragraphs(["A ──→ B"])
        [('pre', '', 'A ──→ B')]
    """
    found = []  # 每段：种类、记号、各行
    for line in lines:
        text = line.strip()
        if not text:
            found.append(None)
        elif re.search(r"[─│┌└├╮╯▁█]", line):
            if not (found and found[-1] and found[-1][0] == "pre"):
                found.append(("pre", "", []))
            found[-1][2].append(line.rstrip())
        elif match := ITEM.fullmatch(text):
            found.append(("item", match[1], [match[2]]))
        elif re.match(r" {3,}n = |    \S.* = ", line) and not CHINESE.search(line.split("=")[0]):
            found.append(("pre", "", [text]))  # 单独缩进的一行公式
        elif found and found[-1] and found[-1][0] != "pre":
            found[-1][2].append(text)
        else:
            found.append(("text", "", [text]))
    made = []
    for kind, mark, lines in filter(None, found):
        if kind == "pre":
            made.append((kind, mark, "\n".join(lines)))
            continue
        pieces = re.split(r"(?:(?<=[；。：，])|(?<=^))\s*([①-⑳])\s*", join(lines)) if mark in CIRCLED or kind == "text" else [join(lines)]
        if kind == "text" and len(pieces) < 5:  # 一句话里只提到一个 ①，不是条目
            pieces = [join(lines)]
        made += [(kind, mark, pieces[0].strip())] if pieces[0].strip() else []
        made += [("item", mark, text.strip()) for mark, text in zip(pieces[1::2], pieces[2::2])]
    return made


def read_doc(doc):
    """读一段文档字符串。

    参数:
        doc (str): 已去掉公共缩进

    返回:
        SimpleNamespace: summary 第一句；text 其余的段落；fields 小标题到条目（名字、类型、说明）；shape、source、example 三个小标题的原文

    示例:
        >>> doc = read_doc("求和。\\n\\n参数:\\n    x (Tensor): 输入，(b, t)\\n\\n出处: 原书 3.3 节")
        >>> doc.summary, doc.fields["参数"], doc.source
        ('求和。', [('x', 'Tensor', '输入，(b, t)')], '原书 3.3 节')
    """
    first, _, rest = doc.partition("\n")
    found = SimpleNamespace(summary=first, text=[], fields={}, shape=[], source="", example="")
    head, body = None, {None: []}
    for line in rest.splitlines():
        match = HEAD.fullmatch(line)
        if match:
            head = match[1]
            body[head] = [match[2]] if match[2] else []
        else:
            head = head if not line or line.startswith(" ") else None
            body[head].append(line)
    found.text = paragraphs(body[None])
    for name in ("参数", "返回", "异常"):
        for line in body.get(name, []):
            match = FIELD.fullmatch(line.strip())
            entries = found.fields.setdefault(name, [])
            if match and (name == "参数" or not re.search(r"[\u4e00-\u9fff]{5}", match[1])):
                kind = match[2] or ""
                entries.append((match[1], kind, match[3]) if name == "参数" else ("", match[1] + (f" ({kind})" if kind else ""), match[3]))
            elif line.strip() and entries:
                entries[-1] = (*entries[-1][:2], join([entries[-1][2], line.strip()]))
            elif line.strip():
                entries.append(("", "", line.strip()))
    found.shape = [line.strip() for line in body.get("形状", []) if line.strip()]
    found.source = join([line.strip() for line in body.get("出处", []) if line.strip()])
    found.example = "\n".join(line[4:] if line.startswith("    ") else line for line in body.get("示例", [])).strip("\n")
    return found


def read_opening(doc):
    """读模块文档：页面的开头。

    参数:
        doc (str): 模块文档

    返回:
        SimpleNamespace: chapter（第 3 章 · 3.5 节）、title、place（3.5）、blocks（小标题、段落）、commands、cost、letters（字母到意思）

    示例:
        >>> opening = read_opening("第 3 章 · 3.5 节　因果注意力\\n\\n运行：\\n    python a.py\\n    约 2 秒，0.3 GB（2 核 CPU）\\n\\n形状记号：b 批大小　t 序列长度")
        >>> opening.place, opening.title, opening.commands, opening.cost
        ('3.5', '因果注意力', ['python a.py'], '约 2 秒，0.3 GB（2 核 CPU）')
        >>> opening.letters
        {'b': '批大小', 't': '序列长度'}
    """
    first, _, rest = doc.partition("\n")
    chapter, _, title = first.partition("　")
    if not title:
        chapter, title = "", first
    place = re.search(r"· ([\dA-E.]+(?:[–、][\dA-E.]+)*) 节|练习 ([\dA-E]\.\d+)", chapter)
    cost = COST.search(rest)
    found = SimpleNamespace(chapter=chapter, title=title, place=next(filter(None, place.groups()), "") if place else "", blocks=[], commands=[], cost=cost[1] if cost else "", letters={})
    blocks, label = [], None
    for line in rest.splitlines():
        match = LABEL.fullmatch(line)
        if match:
            label, blocks = match[1], [*blocks, (match[1], [match[2]] if match[2] else [])]
        elif not line.strip():
            label = None
        elif label and line.startswith(" "):
            blocks[-1][1].append(line.strip())
        elif blocks and blocks[-1][0] == "" and label == "":
            blocks[-1][1].append(line)
        else:
            label, blocks = "", [*blocks, ("", [line])]
    for label, lines in blocks:
        if label == "运行":
            for line in lines:
                if re.match(r"(python|bash|torchrun|pip) ", line):
                    found.commands.append(line)
                elif not COST.search(line) and line:
                    found.blocks.append(("怎样运行", paragraphs([line])))
        elif label.startswith("形状记号"):
            for line in lines:
                for one, two, meaning in LETTER.findall(line.replace("　　", "　")):
                    found.letters |= {letter: meaning.rstrip("。") for letter in (one, two) if letter}
        else:
            found.blocks.append((label, paragraphs([line for line in lines if line])))
    return found


@cache
def scan(text):
    """一段代码里的注释、文档字符串在哪里。

    参数:
        text (str): 整个脚本

    返回:
        SimpleNamespace: tree 语法树；lines 各行；comments 行号到（列，注释）；docs 起始行到（结束行，主人，文档）；strings 在多行字符串里的行号；
            heads 类和函数的第一行（装饰器也算）到冒号那一行；owners 顶层的定义，第一行到名字

    异常:
        SyntaxError: 不是能运行的 Python
    """
    tree, comments, strings, number, before = ast.parse(text), {}, set(), 1, 0
    for match in copy_forward.LITERAL.finditer(text):
        number, before = number + text.count("\n", before, match.start()), match.start()
        if match[2]:
            comments[number] = (before - text.rfind("\n", 0, before) - 1, match[2])
        else:
            strings.update(range(number + 1, number + 1 + match[0].count("\n")))
    docs = {node.body[0].lineno: (node.body[0].end_lineno, node, ast.get_docstring(node)) for node in copy_forward.documented(tree)}
    if ast.get_docstring(tree):
        docs[tree.body[0].lineno] = (tree.body[0].end_lineno, tree, ast.get_docstring(tree))
    owners, heads, waiting = {}, {}, [tree]  # 只走语句，不走表达式，快得多
    while waiting:
        node = waiting.pop()
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            waiting += getattr(node, field, [])
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            heads[first] = max(node.lineno, node.body[0].lineno - 1)
            if node in tree.body:
                owners[first] = node.name
    return SimpleNamespace(tree=tree, lines=text.splitlines(), comments=comments, docs=docs, strings=strings, heads=heads, owners=owners)


def split_comment(comment, code):
    """行尾的注释：哪些留在代码旁边（形状、几个字的），哪些搬到左边。

    参数:
        comment (str): 注释，以 # 开头
        code (str): 它前面的代码

    返回:
        tuple[str, str, str]: 形状，留下的，搬走的

    示例:
        >>> split_comment("# (b, 1)　最后一维留着，才能与前面的拼接", "x = y[:, :1]")
        ('(b, 1)', '', '最后一维留着，才能与前面的拼接')
        >>> split_comment("# Your", "[0.43, 0.15, 0.89],")
        ('', 'Your', '')
    """
    text = re.sub(r"^#+\s*(noqa(: [A-Z]\d+(, [A-Z]\d+)*)?|fmt: \w+)?[　\s]*", "", comment)
    match = SHAPE.match(text)
    shape, rest = (match[1], match[2]) if match and not re.match(r"[\[(]*[\d.]+ [-+]", text) else ("", text)
    shape = shape if not CHINESE.search(re.sub("[三两四]个|各|都是|或", "", shape)) else ""
    rest = rest if shape else text
    if rest and (not CHINESE.search(rest) or width(rest) <= SHORT and width(code) + width(shape) + width(rest) <= WIDE):
        return shape, rest, ""
    return shape, "", rest


def rows(source, start, end):
    """把几行代码分成一条条：左边说明，右边代码。

    参数:
        source (SimpleNamespace): scan 的结果
        start (int): 第一行，从 1 起
        end (int): 最后一行

    返回:
        list[SimpleNamespace]: 每条有 kind（row）、prose（一串「text 与段落」或「doc 与文档」）、code（行号、代码、形状、留下的注释）、names（这里定义的顶层组件）

    示例:
        >>> source = scan("# 先说为什么\\nx = 1\\n\\ny = 2  # 这一句解释得比较长，放在代码旁边就太挤了，所以搬到左边去\\n")
        >>> [(row.prose, [line[:2] for line in row.code]) for row in rows(source, 1, 4)]
        [([('text', [('text', '', '先说为什么')])], [(2, 'x = 1')]), ([('text', [('text', '', '这一句解释得比较长，放在代码旁边就太挤了，所以搬到左边去')])], [(4, 'y = 2')])]
    """
    found, comment = [], []

    def fresh():
        found.append(SimpleNamespace(kind="row", prose=[], code=[], names=[]))
        return found[-1]

    def flush(row):
        if comment:
            row.prose.append(("text", paragraphs(comment)))
            comment.clear()
        return row

    row, header_end, number = fresh(), 0, start
    while number <= end:
        line = source.lines[number - 1]
        column, text = source.comments.get(number, (None, ""))
        if number in source.docs:
            last, node, doc = source.docs[number]
            if row.code and row.code[-1][0] > header_end:
                row = fresh()
            flush(row).prose.append(("doc", read_doc(doc)))
            number = last + 1
            continue
        if number in source.strings:
            row.code.append((number, line, "", ""))
        elif text and not line[:column].strip():
            if row.code or (row.prose and not comment):
                row = fresh()
            comment.append(re.sub(r"^# ?", "", text))
        elif not line.strip():
            if comment and row.code == []:  # 空行隔开的注释，自成一条
                flush(row)
                row = fresh()
            elif row.code:
                row.code.append((number, "", "", ""))
        else:
            shape, kept, moved = split_comment(text, line[:column].rstrip()) if text else ("", "", "")
            if number in source.heads and row.code:
                row = fresh()
            if number in source.heads:
                header_end = source.heads[number]
                row.names += [source.owners[number]] if number in source.owners else []
            if moved and row.code:
                row = fresh()
            flush(row)
            if moved:
                row.prose.append(("text", paragraphs([moved])))
            row.code.append((number, line[:column].rstrip(), shape, kept))
        number += 1
    flush(row)
    made = []
    for row in found:
        if made and not row.prose and not row.names:  # 左边没有话的，接在上一条后面：长长的文档旁边就不会空着
            made[-1].code += row.code
        elif row.code or row.prose:
            made.append(row)
    for row in made:
        while row.code and not row.code[-1][1] and not row.code[-1][2]:
            row.code.pop()
    return made


def region(source, kind, home, names, start, end):
    """一个沿用区或改写区。

    参数:
        source (SimpleNamespace): scan 的结果
        kind (str): 沿用、沿用（含注释）或改写
        home (str): 原处，文件或文件夹
        names (list[str]): 组件
        start, end (int): region 和 endregion 的行号，从 1 起

    返回:
        SimpleNamespace: kind（region）、how、names、homes（名字到文件）、rows；改写区另有 gone（行号到它前面删去的几行）和 added（改过的行号）

    异常:
        ValueError: 找不到原处
    """
    made = SimpleNamespace(kind="region", how=kind[:2], names=names, line=start, rows=rows(source, start + 1, end - 1), gone={}, added=set())
    made.homes = {name: copy_forward.home(home, name) for name in names}
    if made.how == "改写":
        made.gone, made.added = differences(copy_forward.expected(home, names), "\n".join(source.lines[start : end - 1]), start)
    return made


def differences(original, changed, offset=0):
    """改写区与原处差在哪里：注释、文档和空行不算。

    参数:
        original (str): 原处的代码
        changed (str): 改写后的代码
        offset (int): 改写后的第一行前面有几行

    返回:
        tuple[dict, set]: 行号 → 它前面删去的几行；新加的、改过的行号

    示例:
        >>> differences("a = 1\\nb = 2\\nc = 3", "a = 1\\nb = 5  # 改：大一些\\nc = 3", 10)
        ({12: ['b = 2']}, {12})
    """
    before, after = copy_forward.code_lines(original), copy_forward.code_lines(changed)
    gone, added = {}, set()
    matcher = copy_forward.difflib.SequenceMatcher(None, [line for line, _ in before], [line for line, _ in after], autojunk=False)
    for tag, left, right, start, end in matcher.get_opcodes():
        if tag != "equal":
            added |= {after[index][1] + 1 + offset for index in range(start, end)}
            if right > left:
                at = after[start][1] + 1 + offset if start < len(after) else after[-1][1] + 2 + offset
                gone[at] = [line for line, _ in before[left:right]]
    return gone, added


def slug(text, used):
    """给一节起一个锚点，一页之内不重复。

    参数:
        text (str): 标题
        used (set[str]): 已经用掉的，新的会加进去

    返回:
        str: 锚点

    示例:
        >>> slug("3.5.1　先算出 *权重*", set())
        '3.5.1-先算出-权重'
    """
    base = re.sub(r"[^\w.\u4e00-\u9fff]+", "-", text).strip("-.")[:40] or "section"
    name = next(name for name in [base, *(f"{base}-{number}" for number in range(2, 99))] if name not in used)
    used.add(name)
    return name


def read_script(path):
    """把一个脚本拆开。

    参数:
        path (Path): 脚本

    返回:
        SimpleNamespace: name 相对路径、opening 开头、sections 各节（title、anchor、line、cell 第几格、blocks）、source

    异常:
        SyntaxError: 不是能运行的 Python
        ValueError: 区没有配对，或找不到原处
    """
    text = path.read_text(encoding="utf-8")
    source = scan(text)
    opening = read_opening(ast.get_docstring(source.tree) or path.stem)
    marks = {number: re.sub(r"^# %%\s*", "", comment) for number, (column, comment) in source.comments.items() if column == 0 and comment.startswith("# %%")}
    areas = {start + 1: (kind, home, names, start + 1, end + 1) for kind, home, names, start, end in copy_forward.regions(path)}
    inside = {number for *_, start, end in areas.values() for number in range(start, end + 1)}
    first = source.docs[source.tree.body[0].lineno][0] + 1 if source.tree.body and source.tree.body[0].lineno in source.docs else 1
    starts = [(first, "准备：导入与常量", 0)]
    for cell, (number, title) in enumerate(marks.items(), start=1):
        starts.append((number, title or f"第 {cell} 格", cell))
    if not marks:
        for node in source.tree.body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.lineno not in inside:
                number = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                while number - 1 not in inside and source.lines[number - 2].startswith("#"):
                    number -= 1
                starts.append((number, node.name, 0))
    starts.append((len(source.lines) + 1, "", 0))
    sections, used = [], set()
    for (start, title, cell), (stop, *_) in zip(starts, starts[1:]):
        blocks, at = [], start + (start in marks)
        while at < stop:
            here = next((number for number in range(at, stop) if number in areas), stop)
            blocks += rows(source, at, here - 1) if here > at else []
            if here < stop:
                blocks.append(region(source, *areas[here]))
                at = areas[here][4] + 1
            else:
                at = stop
        if blocks or start in marks:
            sections.append(SimpleNamespace(title=title, anchor=slug(title, used), line=start, cell=cell, blocks=blocks))
    return SimpleNamespace(path=path, name=path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name, opening=opening, sections=sections, source=source, text=text)


def main():
    """印出几个脚本拆开之后的样子。"""
    for name in sys.argv[1:]:
        script = read_script(Path(name).resolve())
        print(script.name, script.opening.place, script.opening.title, script.opening.letters)
        for section in script.sections:
            print(f"  {section.line:4} {section.title}　{[block.kind if block.kind == 'row' else block.how for block in section.blocks]}")


if __name__ == "__main__":
    main()
