"""把 Python 和 PyTorch 的报错，说成初学者听得懂的一句中文"""

import builtins
import difflib
import re

SYNTAX = [
    (r"expected ':'", "这一行末尾少了冒号 :"),
    (r"'(.)' was never closed", r"括号 \1 没有配对的另一半"),
    (r"unmatched '(.)'", r"多了一个 \1"),
    (r"closing parenthesis '(.)' does not match opening parenthesis '(.)'.*", r"\2 和 \1 配不上对"),
    (r"unterminated (triple-quoted )?(f-)?string literal.*", "引号没有配对"),
    (r"invalid (?:non-printable )?character '?(.)?'? ?\(?(U\+\w+)\)?", r"有一个 Python 不认识的字符 \1（\2），多半是中文标点：代码里要用英文的逗号、括号、冒号和引号"),
    (r"unexpected indent", "这一行缩进多了"),
    (r"expected an indented block after (.+)", r"\1 的下一行要缩进"),
    (r"unindent does not match any outer indentation level", "这一行的缩进与上面哪一层都对不上，看看是不是少了或多了一个空格"),
    (r"inconsistent use of tabs and spaces in indentation", "缩进里混用了 Tab 和空格，统一用 4 个空格"),
    (r"invalid syntax\. Perhaps you forgot a comma\?", "多半是少了一个逗号"),
    (r"invalid syntax\. Maybe you meant '==' or ':=' instead of '='\?", "比较相等要用两个等号 =="),
    (r"positional argument follows keyword argument.*", "写了 名字=值 之后，后面的参数也要写名字"),
    (r"keyword argument repeated: (\w+)", r"参数 \1 写了两遍"),
    (r"cannot assign to (.+?) here.*", r"等号左边不能是 \1"),
    (r"'return' outside function", "return 不在函数里：缩进少了"),
    (r"'(\w+)' outside (loop|function)", r"\1 的位置不对：看看缩进"),
    (r"unexpected EOF while parsing|unexpected end of file", "文件到这里就断了：括号或引号没有配对，或者 def 下面什么都没有"),
]

RUNTIME = [
    (r"mat1 and mat2 shapes cannot be multiplied \((\S+) and (\S+)\)", r"两个矩阵乘不了：\1 乘 \2，前一个的最后一维要等于后一个的第一维"),
    (r"The size of tensor a \((\d+)\) must match the size of tensor b \((\d+)\) at non-singleton dimension (\d+)", r"形状对不上：第 \3 维（从 0 数）一个是 \1，一个是 \2，不能逐个相加减或广播"),
    (r"view size is not compatible with input tensor's size and stride.*", "view 要求内存连续：transpose 之后先 contiguous()，再 view"),
    (r"shape '(\[.+?\])' is invalid for input of size (\d+)", r"一共 \2 个数，摆不成 \1：看看各个维度乘起来是多少"),
    (r"Expected size for first two dimensions of batch2 tensor to be: (\[.+?\]) but got: (\[.+?\])\.?", r"批量矩阵乘的两边对不上：应为 \1，得到 \2。看看 transpose 的是不是最后两维"),
    (r"Dimension out of range \(expected to be in range of (\[.+?\]), but got (-?\d+)\)", r"没有第 \2 维，这个张量的维度只能写 \1"),
    (r"index (-?\d+) is out of bounds for dimension (\d+) with size (\d+)", r"第 \2 维只有 \3 个，没有第 \1 个"),
    (r"index out of range in self", "查嵌入表时编号超出了表的行数：词元编号 ≥ 词表大小，或位置 ≥ context_length"),
    (r"Expected all tensors to be on the same device.*", "几个张量不在同一个设备上：新建的张量要写 device=x.device，掩码要用 register_buffer"),
    (r"cannot assign (?:module|parameters?) before (?:Module\.__init__\(\)|.*) call", "__init__ 的第一行忘了 super().__init__()"),
    (r"'(\w+)' object has no attribute '_modules'.*|'(\w+)' object has no attribute '_(?:parameters|buffers)'.*", "__init__ 的第一行忘了 super().__init__()"),
    (r'Module \[(\w+)\] is missing the required "forward" function', r"\1 没有 forward 方法：名字写错了，或缩进到别处去了"),
    (r"'NoneType' object (?:has no attribute '?(\w*)'?|is not (\w+)).*", "这里得到的是 None：多半是前面哪个函数忘了 return"),
    (r"'(\w+)' object has no attribute '(\w+)'.*", r"\1 没有叫 \2 的属性：名字写错了，或 __init__ 里忘了 self.\2 = …"),
    (r"(?:.*\.)?(\w+)\(\) missing \d+ required (?:positional|keyword-only) arguments?: (.+)", r"调用 \1 时少了参数 \2"),
    (r"(?:.*\.)?(\w+)\(\) takes (\d+) positional arguments? but (\d+) (?:was|were) given", r"\1 只收 \2 个参数（含 self），却给了 \3 个：是不是 def 里忘了 self？"),
    (r"(?:.*\.)?(\w+)\(\) got an unexpected keyword argument '(\w+)'.*", r"\1 没有叫 \2 的参数"),
    (r"'(\w+)' object is not callable", r"\1 不能当函数调用：多写了一对括号，或变量和函数重名了"),
    (r"'(\w+)' object is not subscriptable", r"\1 不能用方括号取"),
    (r"'(\w+)' object is not iterable", r"\1 不能用 for 循环"),
    (r"unsupported operand type\(s\) for (.+?): '(\w+)' and '(\w+)'", r"\2 和 \3 之间不能做 \1"),
    (r"element 0 of tensors does not require grad.*", "这个损失与参数之间断了：中间用了 .item()、.detach() 或 no_grad"),
    (r"grad can be implicitly created only for scalar outputs", "backward 只能从一个数出发：先求平均或求和"),
    (r"Trying to backward through the graph a second time.*", "对同一张计算图反向传播了两次：每一步都要重新前向"),
    (r"a leaf Variable that requires grad is being used in an in-place operation.*", "参数不能就地修改：更新参数要放在 torch.no_grad() 里"),
    (r"one of the variables needed for gradient computation has been modified by an inplace operation.*", "求梯度还要用的数被就地改掉了：去掉名字末尾的下划线，或先 clone"),
    (r"expected scalar type (\w+) but found (\w+)|.*[Ee]xpected .*type (\w+) but.*got.*", "数的类型不对：嵌入表要整数编号（long），线性层要浮点数"),
    (r"stack expects each tensor to be equal size.*", "torch.stack 要求形状完全相同：先填充到一样长"),
    (r"Sizes of tensors must match except in dimension (\d+).*", r"torch.cat 除了第 \1 维，其余各维都要相同：看看 dim 写对没有"),
    (r"only one element tensors can be converted to Python scalars.*|a Tensor with (\d+) elements cannot be converted to Scalar", "只有一个数的张量才能变成 Python 的数：先求平均，或取其中一个"),
    (r"Boolean value of Tensor with more than one value is ambiguous", "一整个张量不能直接放在 if 里：先 .all()、.any() 或比较后求和"),
    (r"EOF when reading a line", "检查时没有人可以回答 input()，请去掉它"),
    (r"maximum recursion depth exceeded.*", "函数一直在调用自己，停不下来"),
    (r"division by zero", "除以了 0"),
    (r"too many values to unpack \(expected (\d+).*\)", r"等号左边有 \1 个名字，右边给的更多"),
    (r"not enough values to unpack \(expected (\d+), got (\d+)\)", r"等号左边要 \1 个值，右边只有 \2 个"),
    (r"No module named '(\S+)'", r"没有装 \1 这个包，或名字写错了"),
    (r"cannot import name '(\w+)'.*", r"导入的名字 \1 不对"),
]


def translate(message, table):
    """照表翻译一条报错。

    参数:
        message (str): 英文
        table (list[tuple]): 正则和中文

    返回:
        str 或 None: 中文；表里没有则为 None
    """
    for pattern, chinese in table:
        match = re.search(f"^(?:{pattern})", message)
        if match:
            return re.sub(r"\\(\d)", lambda number, match=match: match[int(number[1])] or "", chinese)
    return None


def syntax(error, lines):
    """语法错误。

    参数:
        error (SyntaxError): 错误
        lines (list[str]): 学习者文件的各行

    返回:
        str: 一句中文
    """
    chinese = translate(error.msg or "", SYNTAX)
    if chinese:
        return chinese
    code = lines[error.lineno - 1] if error.lineno and error.lineno <= len(lines) else ""
    wide = [char for char in code.split("#")[0] if char in "，。：；？！（）【】“”‘’"]
    if wide:
        return f"这一行有中文标点「{wide[0]}」，代码里要用英文的"
    return f"这一行或上一行附近写错了（{error.msg}）"


def runtime(kind, message, names=()):
    """运行时的错误。

    参数:
        kind (str): 异常的类名
        message (str): 英文
        names (iterable[str]): 那里能用的名字，用来猜打错的字

    返回:
        str: 一句中文，后面没有句号
    """
    match = re.match(r"(?:free variable|name|cannot access (?:local|free) variable|local variable) '(\w+)'", message)
    if kind in ("NameError", "UnboundLocalError") and match:
        if kind == "UnboundLocalError" or "cannot access" in message:
            return f"变量 {match[1]} 还没有赋值就用了"
        near = difflib.get_close_matches(match[1], [*names, *dir(builtins)], 1, 0.6)
        return f"没有叫 {match[1]} 的名字" + (f"，是不是想写 {near[0]}？" if near else "：没有导入，或前面没有赋值")
    first = message.strip().splitlines()[0] if message.strip() else ""
    chinese = translate(first, RUNTIME)
    if chinese:
        return chinese
    if kind == "KeyError":
        return f"字典里没有 {first} 这个键"
    if kind == "AssertionError":
        return f"assert 不成立 {first}".rstrip()
    return f"{kind}：{first}" if first else kind
