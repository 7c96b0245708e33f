"""查形状之二：一次调用里每个字母是几，注释与真的张量对不对得上（由 shapes.py 调用）

规则：字母和名字（d_out）在一次调用里第一次出现时定下来，之后必须是同一个数；有同名的整数变量，就必须等于它。
循环里第一次出现的，下一轮重新定；循环里写着 t + 1 的（序列越接越长），t 从第二轮起重新定；顶层代码每一格（# %%）重新定。
一项里有两个还不知道的字母，如 b·t，先记着，等知道了再比。
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # 测试按路径导入时，也找得到旁边的 shape_planter.py
from shape_planter import parse_dim


def relations(doc):
    """读模块文档的形状记号里写的关系，如（k = d / h）。

    参数:
        doc (str): 模块文档

    返回:
        list[tuple]: 每个关系一项：原文、左边、右边、是不是只说顶层代码（写了具体的数，如 b = 2）
    """
    found = []
    for match in re.finditer(r"[A-Za-z]\w*(?: = [\w ×·*/+]+)+", doc.partition("形状记号")[2]):
        sides = [parse_dim(side) for side in match[0].split(" = ")]
        if None not in sides:
            found += [(f"{left.text} = {right.text}", left, right, not right.names) for left, right in zip(sides, sides[1:])]
    return found


class Scope:
    """一次函数调用（或顶层的一格）里，每个字母是几。

    参数:
        run (SimpleNamespace): 这次运行：claims、relations、lies、made（每个对象建立时的参数）
        local (dict): 进来时的局部变量
        top (bool): 是不是顶层代码
    """

    def __init__(self, run, local, top=False):
        self.run, self.local, self.top = run, local, top
        self.letters, self.pending, self.rounds, self.hidden = {}, [], {}, {}  # letters：从名字到「是几、在第几层循环、哪里定的」
        owner, self.made = run.made.get(id(local.get("self")), (None, {}))
        if owner is None or owner() is not local["self"]:  # 从前的对象已经不在了，编号又给了别人
            self.made = {}

    def leave(self, depth):
        """循环结束：里面定的都作废，外面被遮住的恢复。

        参数:
            depth (int): 第几层循环
        """
        if not any(entry[1] >= depth for entry in self.letters.values()) and not self.pending and depth not in self.rounds:
            return  # 多半没有什么要作废的
        self.letters = {name: entry for name, entry in self.letters.items() if entry[1] < depth} | self.hidden.pop(depth, {})
        self.pending = [entry for entry in self.pending if entry[2] < depth]
        self.rounds.pop(depth, None)

    def turn(self, depth, growing):
        """新的一轮：上一轮定的作废；从第二轮起，越接越长的字母重新定。

        参数:
            depth (int): 第几层循环
            growing (set[str]): 这层循环里写着 t + 1 之类的字母
        """
        rounds, hidden = self.rounds.get(depth, 0), self.hidden.get(depth, {})
        self.leave(depth)
        self.rounds[depth] = rounds + 1
        if rounds:
            self.hidden[depth] = hidden | {name: self.letters.pop(name) for name in growing if name in self.letters and name not in hidden}
            self.letters = {name: entry for name, entry in self.letters.items() if name not in growing}

    def known(self, name, local):
        """一个名字现在是几：整数变量优先，其次是前面定下的。

        参数:
            name (str): 如 "t"、"d_out"、"layer_sizes[0]"
            local (dict): 正在运行的函数的局部变量

        返回:
            tuple: 数和来历；不知道就是 (None, None)
        """
        owner = getattr(self.local.get("self"), "__dict__", {})
        for place in (local, self.local, owner, self.made):
            try:
                value = place[name] if name.isidentifier() else eval(name, {"__builtins__": {}}, place)
            except (LookupError, NameError, TypeError, AttributeError):
                continue
            if type(value) is int:
                return value, f"变量 {name}"
        return self.letters[name][::2] if name in self.letters else (None, None)

    def settle(self, dim, size, claim, local):
        """比一维：名字都知道就算出来比；只差一个，就由它定下来；差得更多，记着以后再比。

        参数:
            dim (SimpleNamespace): parse_dim 的结果
            size (int): 实际的大小
            claim (SimpleNamespace): 断言
            local (dict): 正在运行的函数的局部变量

        返回:
            str: 哪里不对；没有不对就是空的
        """
        values = {name: self.known(name, local) for name in dim.names}
        unknown = [name for name, (value, _) in values.items() if value is None]
        numbers = {name: value for name, (value, _) in values.items() if value is not None}
        if len(unknown) > 1:
            self.pending.append((dim, size, claim.depth))
        elif unknown:  # 一次式：由 0 和 1 两处的值，倒推出是几
            zero, one = (eval(dim.code, numbers | {unknown[0]: number}) for number in (0, 1))
            value = (size - zero) / (one - zero) if one != zero else -1
            if value < 0 or value != int(value):
                return f"{dim.text} 不可能是 {size}"
            self.letters[unknown[0]] = (int(value), claim.depth, f"第 {claim.site.line} 行")
        elif (expected := eval(dim.code, {}, numbers)) != size:
            origins = "，".join(f"{name} = {value}（{origin}）" for name, (value, origin) in values.items())
            return f"{origins}，所以 {dim.text} 应是 {expected:g}，实际是 {size}" if origins else f"写着 {dim.text}，实际是 {size}"
        elif dim.names == [dim.text]:
            self.letters.setdefault(dim.text, (size, claim.depth, f"第 {claim.site.line} 行"))
        return ""

    def match(self, dims, shape, claim, local):
        """比一个形状；对上了才把新定的字母记下来。

        参数:
            dims (list): 注释里的各维
            shape (tuple): 真实的形状
            claim (SimpleNamespace): 断言
            local (dict): 正在运行的函数的局部变量

        返回:
            str: 哪里不对；没有不对就是空的
        """
        dots = next((index for index, dim in enumerate(dims) if dim.text == "…"), None)
        if len(shape) != len(dims) if dots is None else len(shape) < len(dims) - 1:
            return f"写了 {len(dims)} 维，实际是 {len(shape)} 维"
        pairs = list(zip(dims, shape)) if dots is None else [*zip(dims[:dots], shape), *zip(dims[dots + 1 :], shape[len(shape) - len(dims) + 1 + dots :])]
        letters, pending = dict(self.letters), list(self.pending)
        # 先看单个的字母，再看算式：(b·t, V) 里的 b、t 要先知道。
        wrong = [reason for dim, size in sorted(pairs, key=lambda pair: pair[0].names != [pair[0].text]) if (reason := self.settle(dim, size, claim, local))]
        waiting, self.pending = self.pending, []
        wrong += [reason for dim, size, _ in waiting if (reason := self.settle(dim, size, claim, local))]
        if wrong:
            self.letters, self.pending = letters, pending
            return wrong[0]
        for relation in list(self.run.relations):
            text, left, right, top = relation
            # 只看注释里写到的字母。进出不同时，d 分别写作 d_in、d_out；头是从 d_out 切出来的。
            numbers = {name: self.letters.get(name, self.letters.get("d_out") if name == "d" else None) for name in {*left.names, *right.names}}
            numbers = {name: entry and entry[0] for name, entry in numbers.items()}
            if (self.top or not top) and None not in numbers.values() and eval(left.code, {}, numbers) != eval(right.code, {}, numbers):
                self.run.relations.remove(relation)  # 一个关系只报一次
                return f"形状记号里说 {text}，这里却是 " + "、".join(f"{name} = {numbers[name]}" for name in sorted(numbers))
        return ""

    def compare(self, claim, value, local):
        """比一个断言，不对就记下来。

        参数:
            claim (SimpleNamespace): 断言
            value (object): 表达式的值
            local (dict): 正在运行的函数的局部变量
        """
        shapes = shapes_of(value)
        if not shapes and isinstance(value, (list, tuple, dict)) and not value:
            return  # 空的列表，没有东西可比
        if not shapes and any(len(name) > 1 for name in claim.names):
            claim.site.isnt = True  # (max_length, stride) 这样的括号，值不是张量，就不是形状注释
            return
        claim.site.looked += 1
        slots = claim.slots * len(shapes) if len(claim.slots) == 1 else claim.slots
        wanted = claim.site.count or len(slots)
        reason = f"写了 {wanted} 个，实际有 {len(shapes)} 个张量" if wanted != len(shapes) else "" if shapes else f"得到的是 {type(value).__name__}，不是张量"
        fixes = [([], shape) for shape in shapes]
        span = (claim.slots[0][1][0][1][0], claim.slots[-1][1][-1][1][1])
        letters = dict(self.letters)
        for (kind, ways), shape in zip(slots, shapes) if not reason else []:
            self.letters = dict(letters) if claim.site.each else self.letters  # 写着"各""每批"：每个张量的字母可以不同
            reasons = [self.match(dims, shape, claim, local) for dims, _ in ways]
            wrong = [index for index, why in enumerate(reasons) if why]
            if wrong and (kind == "=" or len(wrong) == len(ways)):
                reason, (dims, span) = reasons[wrong[0]], ways[wrong[0]]
                fixes = [(dims, shape)]
                break
        if reason:
            old, new = claim.site.text, "，".join(self.suggest(dims, shape, local) for dims, shape in fixes)
            real = "，".join(f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})" for shape in shapes)
            self.run.lies.setdefault(claim.site.line, {"old": old, "real": real, "reason": reason, "new": old[: span[0]] + new + old[span[1] :]})

    def suggest(self, dims, shape, local):
        """为真实的形状写一条注释：原来写对的维照旧，其余用这里定下的字母，再不行就写数字。

        参数:
            dims (list): 原来的各维
            shape (tuple): 真实的形状
            local (dict): 正在运行的函数的局部变量

        返回:
            str: 如 "(b, t, 3)"
        """
        written = []
        for index, size in enumerate(shape):
            dim = dims[index] if len(dims) == len(shape) and dims[index].code else None
            numbers = {name: self.known(name, local)[0] for name in dim.names} if dim else {}
            fitting = [name for name, entry in self.letters.items() if entry[0] == size != 1]
            kept = dim and None not in numbers.values() and eval(dim.code, numbers) == size
            written.append(dim.text if kept else fitting[0] if len(fitting) == 1 else str(size))
        return f"({', '.join(written)}{',' * (len(written) == 1)})"


def shapes_of(value):
    """取出一个值里所有张量的形状。

    参数:
        value (object): 张量、数组、torch.Size，或它们的列表、元组、字典

    返回:
        list[tuple]: 形状；一个张量也没有就是空的
    """
    if isinstance(getattr(value, "shape", None), tuple):
        return [tuple(value.shape)]
    if type(value).__name__ == "Size":
        return [tuple(value)]
    items = list(value.values()) if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else []
    return [shape for item in items[:100] for shape in shapes_of(item)]
