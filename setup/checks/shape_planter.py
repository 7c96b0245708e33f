"""查形状之一：读形状注释，在语法树里埋下检查（由 shapes.py 调用）

`x = y.view(2, 3)  # (2, 3)` 变成 `x = look__(scope__, 编号, y.view(2, 3))`：look__ 看一眼形状，把值原样交还。
运行：
    python setup/checks/shape_planter.py 某个脚本.py    # 印出埋好之后的代码，想知道某条注释看的是哪个表达式时用
"""

import ast
import re
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent))  # 测试按路径导入这个文件时，也找得到旁边的 comments.py
import comments

GROUP = re.compile(r"\(([^()\u4e00-\u9fff]*)\)")
# 行尾注释的开头：# (b, t)、# 改：(b, t)、# 三个 (d, d)、# 每批 (b, t)、# 各 (h, t, t)、# 都是 (n,)
LEAD = re.compile(r"#\s*(?:改：)?(?:([一两三四五六])个|([各每])[个批项块层条头种]?(?:一个)?|都是)?\s*(?=\()")
COUNTS = {"一": 1, "两": 2, "三": 3, "四": 4, "五": 5, "六": 6}
SEPARATOR = re.compile(r"\s*(→|=|或|，|,|、|和)\s*(?=\()")
LOSSES = {"cross_entropy", "binary_cross_entropy", "mse_loss", "nll_loss"}  # 得到一个数，注释写的是参数的形状
LOOPS = (ast.For, ast.While, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def parse_dim(text):
    """读形状里的一维。

    参数:
        text (str): 如 "b"、"4d"、"t + 1"、"b·t"、"…"

    返回:
        SimpleNamespace: text 原文、names 用到的名字、code 算式；看不懂就是 None
    """
    text = text.strip().replace("...", "…")
    if text == "…":
        return SimpleNamespace(text=text, names=[], code=None)
    formula = re.sub(r"\b(\d+)(?=[A-Za-z])", r"\1*", re.sub("[·×]", "*", text).replace("−", "-"))

    def only_names(node):  # layer_sizes[0] 当成一个名字；除了名字、整数和加减乘除，别的都不是形状
        if isinstance(node, (ast.Subscript, ast.Attribute, ast.Name)):
            return ast.Name(ast.unparse(node), ast.Load())
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub, ast.Mult, ast.Div)):
            node.left, node.right = only_names(node.left), only_names(node.right)
        elif not (isinstance(node, ast.Constant) and type(node.value) is int):
            raise SyntaxError
        return node

    try:
        tree = ast.parse(formula, mode="eval")
        tree.body = only_names(tree.body)
    except SyntaxError:
        return None
    names = sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)})
    return SimpleNamespace(text=text, names=names, code=compile(ast.fix_missing_locations(tree), "形状", "eval"))


def parse_shapes(text):
    """读一串形状，如 "(b, t)，(b,)　说明"。

    参数:
        text (str): 从第一个括号开始

    返回:
        list[tuple]: 每个括号一项：前面的分隔（第一个是空的）、各维、在 text 里的起止；不是形状就是空的，如编号 `(1)`、公式 `(x, y) / 2`
    """
    found, position, separator = [], 0, ""
    while match := GROUP.match(text, position):
        body = match[1].strip()
        dims = [parse_dim(part) for part in body.rstrip(",").split(",")] if body else []
        if None in dims or len(dims) == 1 and "," not in body and not re.fullmatch(r"[A-Za-z]|…", body):
            break
        found, position = [*found, (separator, dims, match.span())], match.end()
        if not (between := SEPARATOR.match(text, position)):
            break
        separator, position = between[1], between.end()
    # 后面接着运算符的是公式，如 (b, t, d) + (t, d)；紧接着字母的也不是形状。
    return [] if re.match(r"\s*[-+*/@<>^]|[A-Za-z\[.]", text[position:]) else found


def pieces_of(text, position):
    """把一行文档切成一段段：几个字，和它们说的形状。

    参数:
        text (str): 如 "输入 (b, t) → 输出 (b, t, d)"
        position (int): 从哪里读起

    返回:
        list[tuple]: 每段一项：前面的字、形状；箭头前后是两段
    """
    pieces, before = [], position
    while match := GROUP.search(text, position):
        groups = parse_shapes(text[match.start() :])
        groups = groups[: next((index for index, group in enumerate(groups) if group[0] == "→"), None)]
        position = match.end()
        if groups:
            words, position = text[before : match.start()], match.start() + groups[-1][2][1]
            pieces.append((words, [(separator, dims, (match.start() + left, match.start() + right)) for separator, dims, (left, right) in groups]))
            before = position
    return pieces


class Planter(ast.NodeTransformer):
    """给一个脚本埋下检查。一条注释（site）有一个或几个断言（claim），各管一个表达式。

    参数:
        source (SimpleNamespace): comments.read 的结果
    """

    def __init__(self, source):
        self.source, self.sites, self.claims = source, {}, []
        self.wrap, self.after, self.inside, self.entry, self.exit = {}, {}, {}, {}, {}  # 从节点到一串断言，后四个还带着要看的表达式
        self.depth, self.fresh, self.function = 0, False, None
        for line, comment in source.comments.items():
            match = LEAD.match(comment)
            groups = parse_shapes(comment[match.end() :]) if match else []
            if groups and source.lines[line - 1].strip() != comment:
                self.sites[line] = self.site(line, comment[match.end() :], COUNTS.get(match[1]), bool(match[2]))
                self.place(line, groups)
        for node in ast.walk(source.tree):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
                self.read_doc(node)

    @staticmethod
    def site(line, text, count=None, each=False):
        """登记一条注释。

        参数:
            line (int): 第几行
            text (str): 注释，从形状开始；文档就是那一行
            count (int): 写着"三个"就是 3
            each (bool): 写着"各""每批"：每个张量的字母可以不同

        返回:
            SimpleNamespace: 另有 looked 比过几次、isnt 其实不是形状
        """
        return SimpleNamespace(line=line, text=text, count=count, each=each, looked=0, isnt=False)

    def claim(self, line, groups):
        """登记一个断言。

        参数:
            line (int): 注释在第几行
            groups (list): 要比的形状，parse_shapes 的一部分

        返回:
            SimpleNamespace: 断言；slots 每个张量一项：几种写法要都对（=）还是对一种就行（或），和各种写法
        """
        slots = []
        for separator, *group in groups:
            if separator in ("=", "或") and slots:
                slots[-1] = (separator, [*slots[-1][1], group])
            else:
                slots.append(("=", [group]))
        names = {name for _, dims, _ in groups for dim in dims for name in dim.names}
        self.claims.append(SimpleNamespace(id=len(self.claims), site=self.sites[line], slots=slots, names=names, depth=0, fresh=False))
        return self.claims[-1]

    def share(self, line, groups, nodes):
        """把几个形状分给几个表达式：个数相同就一一对应，否则都给最后一个。

        参数:
            line (int): 行号
            groups (list): 形状
            nodes (list[ast.expr]): 表达式
        """
        parts = [[group] for group in groups] if len(groups) == len(nodes) else [groups]
        for part, node in zip(parts, nodes if len(parts) == len(nodes) else nodes[-1:]):
            self.wrap.setdefault(node, []).append(self.claim(line, part))

    def place(self, line, groups):
        """为行尾的一条注释找到它说的表达式。

        参数:
            line (int): 行号
            groups (list): parse_shapes 的结果
        """
        covering = [node for node in self.source.nodes if getattr(node, "lineno", line + 1) <= line <= node.end_lineno]
        node = max(covering, key=lambda node: (node.lineno, -node.end_lineno))
        body = getattr(node, "body", None)
        last = max(node.lineno, body[0].lineno - 1) if isinstance(body, list) else node.end_lineno
        value = getattr(node, "value", None) or getattr(node, "test", None)
        while isinstance(value, (ast.Lambda, ast.Yield)):
            value = value.body if isinstance(value, ast.Lambda) else value.value
        called = ast.unparse(value.func).split(".")[-1] if isinstance(value, ast.Call) else None
        target = getattr(node, "target", None) or (node.items[-1].optional_vars if isinstance(node, ast.With) else getattr(node, "targets", [None])[0])
        if node.lineno < line < last:  # 一句话的中间一行：在这一行结束的、最大的那些表达式
            ends = [inner for inner in ast.walk(node) if isinstance(inner, ast.expr) and inner.end_lineno == line]
            ends = [inner for inner in ends if isinstance(getattr(inner, "ctx", ast.Load()), ast.Load) and not isinstance(inner, (ast.Constant, ast.Starred))]
            self.share(line, groups, [inner for inner in ends if not any(inner in list(ast.walk(outer))[1:] for outer in ends)])
        elif isinstance(node, (ast.For, ast.With)) and target:
            self.inside.setdefault(node, []).append((target, self.claim(line, groups)))
        elif isinstance(target, ast.Tuple) or isinstance(node, ast.AugAssign):
            self.after.setdefault(node, []).append((target, self.claim(line, groups)))
        elif called in LOSSES and "reduction='none'" not in ast.unparse(value) or isinstance(node, ast.Expr) and called in ("append", "add", "extend"):
            self.share(line, groups, value.args[: len(groups)])
        elif any(separator == "→" for separator, _, _ in groups):
            chain = [value]  # 变形前后：最后一个形状是结果，第一个是变形之前的张量，中间的沿着链往里数
            while (inner := self.origin(chain[-1])) is not None:
                chain.append(inner)
            self.share(line, [("", *group[1:]) for group in groups], [chain[-1], *reversed(chain[: len(groups) - 1])])
        elif value is not None:
            self.wrap.setdefault(value, []).append(self.claim(line, groups))

    @staticmethod
    def origin(node):
        """一个表达式是由谁变形来的：x.view(2, 3) 来自 x，self.proj(x) 来自 x，a @ b 来自 a。

        参数:
            node (ast.expr): 表达式

        返回:
            ast.expr: 没有就是 None
        """
        if isinstance(node, ast.Call):
            method = isinstance(node.func, ast.Attribute) and (node.func.attr in comments.RESHAPING or not node.args)
            return node.func.value if method and ast.unparse(node.func.value) != "torch" else node.args[0] if node.args else None
        return node.left if isinstance(node, ast.BinOp) else node.value if isinstance(node, (ast.Subscript, ast.Attribute)) else None

    def read_doc(self, node):
        """读一段文档里的 形状、参数、返回。类的文档说的是 forward 的进出、__getitem__ 给出的样本、__init__ 存下的张量。

        参数:
            node (ast.ClassDef): 文档的主人，也可以是 ast.FunctionDef
        """
        methods = {inner.name: inner for inner in node.body if isinstance(inner, ast.FunctionDef)} if isinstance(node, ast.ClassDef) else {}
        call, init = methods.get("forward", node), methods.get("__init__", node)
        head = None
        for line in range(node.body[0].lineno, node.body[0].end_lineno + 1):
            text = self.source.lines[line - 1].strip().strip('"')
            match = comments.HEAD.match(text)
            head, text = (match[1], match[2]) if match else (head if text else None, text)
            entry = re.match(r"(?:(\w+) \()?(?:\w+\[)?(?:Tensor|ndarray)[^:]*:", text) if head in ("参数", "返回") else None
            if not entry and head != "形状":
                continue
            pieces = pieces_of(text, entry.end() if entry else 0)
            if entry and text.startswith("tuple"):  # 特征 (n, 2) 和标签 (n,)：各个张量的形状合起来
                pieces = [("", [("，", *group[1:]) for _, groups in pieces for group in groups])] * bool(pieces)
            for words, groups in pieces[:1] if entry else pieces:
                self.sites.setdefault(line, self.site(line, text))
                claim = self.claim(line, groups)
                # x (b, t)；input_ids、target_ids 都是 (n, t)；params["g"]、params["b"] (d,)
                named = re.fullmatch(r'[\s，]*(?:[^A-Za-z]*如 )?((?:[A-Za-z_]\w*(?:\["?\w+"?\])*、?)+) (?:都是 )?', words)
                names = named[1].split("、") if named else []
                if head == "参数":
                    self.entry.setdefault(init, []).append((entry[1], claim))
                elif head == "返回" or "输入和目标" in words:
                    self.exit.setdefault(node, []).append(("return", claim))
                elif "样本" in words:
                    self.exit.setdefault(methods.get("__getitem__"), []).append(("return", claim))
                elif "输出" in words or words.strip() == "→":
                    self.exit.setdefault(call, []).append(("return", claim))
                elif methods and names:
                    self.exit.setdefault(init, []).append((", ".join(f"self.{name}" for name in names), claim))
                elif names and "[" in names[0]:
                    self.exit.setdefault(node, []).append((", ".join(names), claim))
                elif "输入" in words or names:
                    self.entry.setdefault(call, []).append(("、".join(names), claim))

    def look(self, node, claim):
        """把一个表达式换成 `look__(scope__, 编号, 表达式)`。

        参数:
            node (ast.expr): 表达式
            claim (SimpleNamespace): 断言

        返回:
            ast.expr: 换好的表达式
        """
        claim.depth, claim.fresh = self.depth, self.fresh
        scope = ast.Name("scope__", ast.Load())
        if isinstance(self.function, ast.Lambda):  # lambda 里不能写语句，就在这里为它建一个新的作用域
            scope = ast.Call(ast.Name("enter__", ast.Load()), [ast.Constant(0), ast.Dict([], [])], [])
        return ast.copy_location(ast.Call(ast.Name("look__", ast.Load()), [scope, ast.Constant(claim.id), node], []), node)

    def statement(self, code, near, claim=None):
        """造一句插进去的代码。

        参数:
            code (str): 代码
            near (ast.stmt): 行号跟着谁
            claim (SimpleNamespace): 给出时，code 是要看的表达式

        返回:
            ast.stmt: 语句
        """
        made = ast.parse(code).body[0]
        if claim:
            made.value = self.look(made.value, claim)
        for inner in ast.walk(made):
            ast.copy_location(inner, near)
        return made

    def visit(self, node):
        """走到每个节点：套上 look__，管循环的深度，在函数开头建作用域。

        参数:
            node (ast.AST): 节点

        返回:
            ast.AST: 换上去的节点，也可能是几句代码的列表
        """
        saved = self.depth, self.fresh, self.function
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            self.depth, self.fresh, self.function = 0, False, node
        elif isinstance(node, LOOPS):
            self.depth, self.fresh = self.depth + 1, isinstance(node, ast.expr)
        new = self.generic_visit(node)
        before, following = [], []
        if isinstance(node, (ast.For, ast.While)):
            inner = [claim for claim in self.claims if node.lineno <= claim.site.line <= node.end_lineno]
            growing = {name for claim in inner for _, ways in claim.slots for dims, _ in ways for dim in dims if "+" in dim.text for name in dim.names}
            before.append(self.statement(f"scope__.turn({self.depth}, {growing or ()})", node.body[0]))
            following.append(self.statement(f"scope__.leave({self.depth})", node))
        before += [self.statement(ast.unparse(target), node.body[0], claim) for target, claim in self.inside.get(node, [])]
        if isinstance(node, ast.FunctionDef):
            before.append(self.statement(f"scope__ = enter__({node.lineno}, locals())", node.body[0]))
            end = len(node.body) - isinstance(node.body[-1], ast.Return)  # 存下的张量，到末尾（return 之前）再看
            node.body[end:end] = [self.statement(code, node.body[-1], claim) for code, claim in self.exit.get(node, []) if code != "return"]
        if before:
            at = isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None
            node.body[at:at] = before
        if isinstance(node, ast.Return) and node.value:
            for code, claim in self.exit.get(self.function, []):
                node.value = self.look(node.value, claim) if code == "return" else node.value
        self.depth, self.fresh, self.function = saved
        for claim in self.wrap.get(node, []):
            new = self.look(new, claim)
        following += [self.statement(ast.unparse(target), node, claim) for target, claim in self.after.get(node, [])]
        return [new, *following] if following else new

    def plant(self):
        """埋好所有检查。

        返回:
            ast.Module: 可以编译的语法树
        """
        marks = [line for line, comment in self.source.comments.items() if comment.startswith("# %%")]
        starts = {min((node.lineno for node in self.source.tree.body if node.lineno > mark), default=0) for mark in marks}
        cells = [node for node in self.source.tree.body if node.lineno in starts]
        tree = self.visit(self.source.tree)
        for node in cells:
            tree.body.insert(tree.body.index(node), self.statement("scope__.leave(0)", node))
        return ast.fix_missing_locations(tree)


def main():
    """印出一个脚本埋好检查之后的代码。"""
    for name in sys.argv[1:]:
        print(ast.unparse(Planter(comments.read(Path(name))).plant()))


if __name__ == "__main__":
    main()
