"""边读边看：把拆好的一个脚本画成一页，左边说明，右边代码，变量带着形状

运行：由 render.py 调用
"""

import ast
import html
import json
import re
import sys
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import copy_forward
import prose
import record
import touch
from markupsafe import Markup
from pygments.lexers import PythonLexer
from pygments.token import Token

KINDS = [  # 记号的种类 → 一个字母的 class；没有列出的不上色，省下一半的字节
    (Token.Keyword, "k"), (Token.Literal.String.Doc, "s"), (Token.Literal.String, "s"), (Token.Literal.Number, "m"),
    (Token.Name.Function, "f"), (Token.Name.Class, "f"), (Token.Name.Decorator, "f"), (Token.Name.Builtin, "t"),
    (Token.Operator.Word, "k"), (Token.Comment, "c"),
]  # fmt: skip


@cache
def kind_of(token):
    """一种记号用哪个 class。

    参数:
        token (pygments 的 _TokenType): 种类

    返回:
        str: 一个字母；不上色就是空的
    """
    return next((letter for kind, letter in KINDS if token in kind), "")


def tokens(text, lexer=None):
    """一段代码按行分好的记号。

    参数:
        text (str): 代码
        lexer (pygments 的 Lexer): 默认是 Python

    返回:
        list[list[tuple]]: 每行一串（种类，文字）
    """
    lines = [[]]
    for kind, value in (lexer or PythonLexer(stripnl=False, ensurenl=False)).get_tokens(text):
        for index, piece in enumerate(value.split("\n")):
            if index:
                lines.append([])
            if piece:
                lines[-1].append((kind, piece))
    return lines


def kept_together(title, tell):
    """标题在标点之后才换行，不把一个词拆开。

    参数:
        title (str): 标题
        tell (callable): 一段话 → HTML

    返回:
        Markup: HTML
    """
    return Markup("".join(f'<span class="keep">{tell(piece)}</span>' for piece in re.findall("[^：，。；？]+[：，。；？]*", title)))


class Shapes:
    """一个脚本里，每一行的每个变量当时是什么形状。

    参数:
        script (SimpleNamespace): extract.read_script 的结果
        seen (dict): 记录里的 shapes：`行号:名字` → 形状、类型、数、后来的形状
    """

    def __init__(self, script, seen):
        self.entries, self.index, self.where = [], {}, {}
        self.seen, self.comments = seen, script.source.comments
        for key in seen:
            line, _, name = key.partition(":")
            self.where.setdefault(name, []).append(int(line))
        self.scopes, self.begins = [], {}  # 函数的起止；一句话从哪行开始、等号在哪一列
        waiting = [script.source.tree] if seen else []
        while waiting:
            node = waiting.pop()
            for field in ("body", "orelse", "finalbody", "handlers", "cases"):
                waiting += getattr(node, field, [])
            if isinstance(node, ast.FunctionDef):
                self.scopes.append((node.lineno, node.end_lineno))
            if isinstance(node, (ast.Assign, ast.AugAssign)):
                for line in range(node.lineno, node.end_lineno + 1):
                    self.begins[line] = (node.lineno, node.value.lineno, node.value.col_offset)
        self.scopes.sort()

    def scope(self, line):
        """一行在哪个函数里：最里面的那个的起止，没有就是整个脚本。

        参数:
            line (int): 行号

        返回:
            tuple[int, int]: 起止
        """
        inside = [scope for scope in self.scopes if scope[0] <= line <= scope[1]]
        return inside[-1] if inside else (0, 10**9)

    def find(self, line, name, left):
        """某一行的某个变量说的是哪一条。

        参数:
            line (int): 行号
            name (str): 变量，或 self.属性
            left (bool): 在等号左边

        返回:
            int 或 None: 第几条；不是张量就是 None
        """
        places = self.where.get(name)
        if not places:
            return None
        start = self.begins.get(line, (line,))[0]
        if name.startswith("self."):
            best = max([at for at in places if at <= line], default=places[0])
        else:
            scope = self.scope(line)
            inner = [at for at in places if self.scope(at) == scope]
            before = [at for at in inner if at < start or (left and at == start)]
            outer = [at for at in places if self.scope(at) == (0, 10**9) and (at < start or scope != (0, 10**9))]
            best = max(before or inner or outer, default=None)
        return None if best is None else self.entry(best, name)

    def entry(self, line, name):
        """把一条记录放进这一页的表里，相同的只放一次。

        参数:
            line (int): 哪一行赋的值
            name (str): 变量

        返回:
            int: 第几条
        """
        shape, kind, *rest = self.seen[f"{line}:{name}"]
        text = "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"
        names = ""
        if match := re.search(r"\(([^()]*)\)(?!.*→)", self.comments.get(line, (0, ""))[1].split("=")[0]):
            names = match[0] if len([part for part in match[1].split(",") if part.strip()]) == len(shape) and "…" not in match[0] else ""
        other = rest[1] if len(rest) > 1 else None
        made = [text, names, kind, rest[0] if rest and rest[0] is not None else None, f"({', '.join(map(str, other))})" if other else ""]
        key = json.dumps(made)
        if key not in self.index:
            self.index[key] = len(self.entries)
            self.entries.append(made)
        return self.index[key]


def code_html(pieces, limit=None, line=0, shapes=None):
    """一行代码的 HTML。

    参数:
        pieces (list[tuple]): 这一行的记号
        limit (int): 只要前几个字符（后面的是注释）
        line (int): 行号
        shapes (Shapes): 变量的形状

    返回:
        str: HTML
    """
    found, column, before = [], 0, ["", ""]
    for kind, text in pieces:
        if limit is not None and column + len(text) > limit:
            text = text[: limit - column]
        if not text:
            break
        shown, name = html.escape(text, quote=False), kind_of(kind)
        if shapes and kind in Token.Name and text.isidentifier():
            whole = f"self.{text}" if before == ["self", "."] else text if before[1] != "." else ""
            begin = shapes.begins.get(line)
            left = begin is None or (line, column) < begin[1:]
            index = shapes.find(line, whole, left) if whole else None
            if index is not None:
                shown = f'<u data-s="{index}">{shown}</u>'
        found.append(f'<span class="{name}">{shown}</span>' if name else shown)
        if text.strip():
            before = [before[1], text.strip()]
        column += len(text)
    return "".join(found)


def squeeze(text):
    """几个空白并成一个。"""
    return re.sub(r"\s+", " ", text).strip()


class Painter:
    """画一个脚本。

    参数:
        site (Site): 网站
        script (SimpleNamespace): extract.read_script 的结果
    """

    def __init__(self, site, script):
        self.site, self.script = site, script
        self.url = site.pages[script.name]
        self.root = "../" * self.url.count("/")
        self.folder = str(Path(script.name).parent).replace("\\", "/")
        self.record = record.load(script.name, script.text)
        self.shapes = Shapes(script, self.record.shapes)
        self.lines = tokens(script.text)
        self.used = {section.anchor for section in script.sections}  # 一页里的锚点不能重复
        self.constants = {node.lineno: name for node in script.source.tree.body for name in copy_forward.names_of(node) if (script.name, name) in site.users and not isinstance(node, (ast.ClassDef, ast.FunctionDef))}

    def tell(self, text):
        """一段话 → HTML。"""
        return prose.inline(text, self.site.linker, self.root, self.folder, self.url)

    def page(self):
        """整页。

        返回:
            tuple[str, list]: HTML，搜索用的各节
        """
        opening, sections, search = self.script.opening, [], []
        self.script.sections[:] = [section for section in self.script.sections if section.blocks or section.cell]
        last = self.script.sections[-1] if self.script.sections else None
        for section in self.script.sections:
            made = [self.block(block) for block in section.blocks]
            cell = section.cell
            show = str(cell) in self.record.cells and (cell or section is last or self.script.sections[-1].cell)
            outputs = self.outputs(cell) if show else ""
            place = re.match(r"([\dA-E]\.[\d.]+|[①-⑳])　?(.*)", section.title)
            title = (place[1], place[2]) if place else ("", section.title)
            first = section.blocks[0] if section.blocks else None
            named = first is not None and first.kind == "row" and section.title in first.names  # 没有格的脚本，一节就是一个组件
            shown = Markup(f"<code>{section.title}</code>") if named else self.title(title[1])
            alone = bool(section.blocks) and all(block.kind == "row" and not block.code for block in section.blocks)
            sections.append({"anchor": section.anchor, "title": shown, "plain": section.title, "place": title[0], "blocks": Markup("".join(made)), "outputs": Markup(outputs), "prose_only": alone})
            search.append([f"{self.url}#{section.anchor}", self.site.short_title(self.script.name), section.title, *self.words(section)])
        front = " ".join([opening.chapter, opening.title, *(text for _, parts in opening.blocks for *_, text in parts)])
        search.insert(0, [self.url, self.site.short_title(self.script.name), "", squeeze(front), self.script.name])
        blocks = [(label, Markup(prose.blocks(parts, self.tell))) for label, parts in opening.blocks]
        commands = [[part.strip() for part in re.split(r"\s{2,}#|\s#\s", command, maxsplit=1)] for command in opening.commands]
        return (
            self.site.page(
                self.url, "script.html", opening.title, name=self.script.name, opening=opening, blocks=blocks, commands=commands, sections=sections,
                shapes=self.shapes.entries, record=self.record, missing=self.record.state, code_lines=len(self.script.source.lines),
                touches=[(f"touch/{page}.html", title) for page, (title, _, scripts) in touch.PAGES.items() if self.script.name in scripts[: max(1, len(scripts) - 1)]],
                cost=self.title(opening.cost), title_html=kept_together(opening.title, self.tell),
            ),
            search,
        )  # fmt: skip

    def title(self, text):
        """标题里的标识符。"""
        return Markup(self.tell(text))

    def words(self, section):
        """一节里给搜索用的文字：说明、代码；缩短的沿用区不算，原处搜得到。

        参数:
            section (SimpleNamespace): 一节

        返回:
            tuple[str, str]: 说明，代码
        """
        said, code = [], []
        for block in section.blocks:
            if block.kind == "region" and block.how == "沿用":
                said.append("、".join(block.names))
                continue
            for row in [block] if block.kind == "row" else block.rows:
                for kind, value in row.prose:
                    if kind == "text":
                        said += [text for *_, text in value]
                    else:
                        said += [value.summary, *(text for *_, text in value.text), *(" ".join(entry) for entries in value.fields.values() for entry in entries), *value.shape]
                code += [f"{text} {shape}" for _, text, shape, _ in row.code]
        return squeeze(" ".join(said)), squeeze(" ".join(code))

    def outputs(self, cell):
        """一格的输出和图。

        参数:
            cell (int): 第几格

        返回:
            str: HTML
        """
        found = []
        for kind, *value in self.record.cells[str(cell)]:
            if kind == "text":
                found.append(f'<pre tabindex="0">{prose.printed(value[0].strip(chr(10)))}</pre>')
            else:
                file, name, words, width, height = value
                found.append(f'<figure><img src="{self.root}pictures/{Path(self.folder)}/{file}" width="{width}" height="{height}" loading="lazy" alt="{html.escape(words or name)}"><figcaption>{html.escape(name)}</figcaption></figure>')
        return "".join(found)

    def block(self, block):
        """一个块。"""
        return self.row(block) if block.kind == "row" else self.region(block)

    def row(self, row, changed=None, copied=False):
        """一行：左边说明，右边代码。

        参数:
            row (SimpleNamespace): extract.rows 的一项
            changed (SimpleNamespace): 所在的改写区，没有就是 None
            copied (bool): 在沿用区里，不再写组件的抬头

        返回:
            str: HTML
        """
        left = []
        for name in row.names if copied is False else []:
            left.append(self.component(name, quiet=changed is not None))
        for number, *_ in row.code:  # 别处沿用的常量，也要有锚点
            if self.constants.get(number, "") not in ("", *self.used):
                self.used.add(self.constants[number])
                left.append(f'<span id="{self.constants[number]}"></span>')
        for kind, value in row.prose:
            left.append(prose.blocks(value, self.tell) if kind == "text" else self.document(value))
        right = []
        for number, code, shape, kept in row.code:
            for gone in changed.gone.get(number, []) if changed else []:
                right.append(self.gone(gone))
            inner = code_html(self.lines[number - 1], len(code), number, self.shapes) if number <= len(self.lines) else html.escape(code)
            note = "".join(f'<span class="p">{prose.letters(part)}</span>' for part in re.split("(?<=，)", shape) if part)
            note += f'<span class="c"># {html.escape(kept, quote=False)}</span>' if kept else ""
            mark = " add" if changed and number in changed.added else ""
            indent = len(code) - len(code.lstrip())
            hang = f' style="--i:{indent}"' if indent else ""
            right.append(f'<div class="l{mark}" id="L{number}" data-n="{number}"{hang}><span class="t">{inner}{" " * bool(note and code)}{note}</span></div>')
        shape_only = "" if row.prose or row.names else " bare"
        code = f'<div class="code">{"".join(right)}</div>' if right else ""
        return f'<div class="row{shape_only}{"" if right else " said"}"><div class="prose">{"".join(left)}</div>{code}</div>'

    @staticmethod
    def gone(text):
        """原处有、这里删去的一行。

        参数:
            text (str): 代码

        返回:
            str: HTML
        """
        indent = len(text) - len(text.lstrip())
        return f'<div class="l del" style="--i:{indent}"><span class="t">{html.escape(text, quote=False)}</span></div>'

    def component(self, name, quiet=False):
        """一个组件的抬头：名字、书的小节、谁用了它、怎么练。

        参数:
            name (str): 组件
            quiet (bool): 在改写区里，只写名字

        返回:
            str: HTML
        """
        anchor = "" if name in self.used else f' id="{name}"'
        self.used.add(name)
        if quiet:
            return f'<p class="def"{anchor}>{name}</p>'
        users = self.site.users.get((self.script.name, name), [])
        facts = []
        if users:
            links = "".join(f'<li>{kind} <a href="{self.root}{self.site.pages[user]}">{html.escape(self.site.short_title(user))}</a></li>' for kind, user in users if user in self.site.pages)
            facts.append(f'<details class="users"><summary>{len(users)} 处用到它</summary><ul>{links}</ul></details>' if links else "")
        if practice := self.site.practice.get((self.script.name, name)):
            facts.append(f'<span class="cmd"><code>python setup/practice.py start {practice}</code><button class="copy" type="button">复制</button></span>')
        head = f'<p class="def"{anchor}>{name}</p>' if anchor else ""  # 这一节的标题就是它，不必再写一遍
        return head + (f'<div class="facts">{"".join(facts)}</div>' if facts else "")

    def document(self, doc):
        """一段文档字符串。

        参数:
            doc (SimpleNamespace): extract.read_doc 的结果

        返回:
            str: HTML
        """
        found = [f'<p class="lead">{self.tell(doc.summary)}</p>', prose.blocks(doc.text, self.tell)]
        for head, entries in doc.fields.items():
            rows = "".join(
                f"<tr>{f'<th scope=row><code>{html.escape(name)}</code></th>' if name else ''}<td>{f'<code class=type>{html.escape(kind)}</code>' if kind else ''}{self.tell(words)}</td></tr>"
                for name, kind, words in entries
            )
            found.append(f'<table class="fields"><caption>{head}</caption><tbody>{rows}</tbody></table>')
        if doc.shape:
            found.append(f'<table class="fields"><caption>形状</caption><tbody>{"".join(f"<tr><td>{self.tell(line)}</td></tr>" for line in doc.shape)}</tbody></table>')
        if doc.source:
            found.append(f'<p class="source">{self.tell(doc.source)}</p>')
        if doc.example:
            found.append(f'<pre class="example" tabindex="0"><code>{chr(10).join(code_html(line) for line in tokens(doc.example))}</code></pre>')
        return "".join(found)

    def region(self, block):
        """沿用区是一行，点开在原地展开；改写区是与原处的对照。

        参数:
            block (SimpleNamespace): extract.region 的结果

        返回:
            str: HTML
        """
        places, size = {}, 0  # 同一个原处只连一次；链接不放在 summary 里面：按钮里套链接，读屏和键盘都会糊涂
        for name, home in block.homes.items():
            place = "setup" if home.startswith("setup/") else (self.site.titles[home].place if home in self.site.titles else "") or Path(home).stem
            places.setdefault(home, (name, place))
        links = []
        for home, (name, place) in places.items():
            label = f' aria-label="{name} 的原处：{html.escape(place)}"'
            links.append(f'<a href="{self.root}{self.site.pages[home]}#{name}"{label}>{html.escape(place)}</a>' if home in self.site.pages else f"<span>{html.escape(place)}</span>")
            size += len(place) + 2
        home = f'<p class="home">← {"、".join(links)}</p>'
        names = "、".join(f"<code>{name}</code>" for name in block.names)
        if block.how == "改写":
            tail = [gone for number, lines in block.gone.items() if not any(number == line[0] for row in block.rows for line in row.code) for gone in lines]
            rows = "".join(self.row(row, block) for row in block.rows)
            rows += f'<div class="row bare"><div class="prose"></div><div class="code">{"".join(map(self.gone, tail))}</div></div>' if tail else ""
            return f'<div class="region change"><p class="bar"><span class="how">改写</span> {names} ← {"、".join(links)}<span class="key"><span class="add">加的、改过的</span><span class="del">原处的</span></span></p>{rows}</div>'
        rows = "".join(self.row(row, copied=True) for row in block.rows)
        count = sum(1 for row in block.rows for line in row.code if line[1])
        return f'<div class="region" style="--w:{size}"><details><summary><span class="how">沿用</span> {names}<span class="size">{count} 行</span></summary>{rows}</details>{home}</div>'
