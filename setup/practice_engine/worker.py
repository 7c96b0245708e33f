"""手敲练习的考官：在单独的进程里，把学习者的代码、原文和每个常见错误都跑一遍，逐个值比较

由 setup/practice.py 启动：一行 JSON 进，一行 JSON 出。导入 torch 最花时间，所以进程可以一直留着（watch 用），
出了超时、内存超限之类的事就整个杀掉重来。
"""

import builtins
import contextlib
import copy
import faulthandler
import io
import json
import math
import os
import random
import sys
import threading
import time
import traceback
import types
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import cutting  # noqa: E402
import explain  # noqa: E402

RTOL, ATOL = 1e-4, 1e-5  # 换一种写法，浮点数的最后几位就会不同；差这么多以内算相同
MEMORY = 2 * 2**30  # 学习者的代码最多再用 2 GB
PRINT_LIMIT = 2000  # 打印得再多，也只留这么多字
EVENTS = 20000  # 逐行对照时最多记这么多次赋值

# ── 把一段代码变成模块，跑用例 ──


def build(component, text=None):
    """把原文（或改坏的原文）变成一个模块。

    参数:
        component (Component): 组件
        text (str): 改坏的原文；None 时用原文

    返回:
        ModuleType: 里面有组件、沿用的组件和导入
    """
    module = types.ModuleType("practice_reference")
    sys.modules[module.__name__] = module  # dataclass 等要从这里找自己所在的模块
    exec(compile(cutting.preamble(component), "<沿用>", "exec"), module.__dict__)
    exec(compile(component.text if text is None else text, str(cutting.ROOT / component.source), "exec"), module.__dict__)
    return module


def mutate(component, mutant):
    """按「旧、新、说明、第几处」把原文改坏。

    参数:
        component (Component): 组件
        mutant (tuple): practice_cases 里的一项

    返回:
        str: 改坏的原文，行号不变（新旧行数相同时）

    异常:
        ValueError: 找不到要改的地方，或不止一处
    """
    old, new, _, *which = mutant
    found = cutting.occurrences(component.text, old)
    if not which and len(found) != 1 or which and which[0] >= len(found):
        raise ValueError(f"「{old}」在原文的代码里出现了 {len(found)} 次" + ("" if found else "，找不到") + ("，请用第 4 项说明是第几处（从 0 数）" if len(found) > 1 else ""))
    start = found[which[0] if which else 0]
    return component.text[:start] + new + component.text[start + len(old) :]


def fresh_state():
    """每个用例之前把全局状态放回原样：种子、默认类型、求不求梯度。"""
    import numpy
    import torch

    torch.manual_seed(0)
    random.seed(0)
    numpy.random.seed(0)
    torch.set_grad_enabled(True)
    if torch.get_default_dtype() != torch.float32:
        torch.set_default_dtype(torch.float32)


PRISTINE = {}  # 用例文件里的列表和字典，原来的样子


def restore_data(case):
    """把用例文件里的列表和字典恢复原样：学习者的代码也许就地改了它们（忘了 copy），不能连累后面的用例。

    参数:
        case (callable): 用例
    """
    space = case.__globals__
    if id(space) not in PRISTINE:
        PRISTINE[id(space)] = {name: copy.deepcopy(value) for name, value in space.items() if isinstance(value, (list, tuple, dict, set)) and name != "COMPONENTS" and not name.startswith("__")}
    for name, value in PRISTINE[id(space)].items():
        space[name] = copy.deepcopy(value)


def run_cases(component, module, path=None):
    """跑完所有用例。用例里抛出的异常也是结果。

    参数:
        component (Component): 组件
        module (ModuleType): 被查的模块
        path (str): 被查的文件；异常的行号只在这个文件里找

    返回:
        list[dict]: 每个用例一项：case、values 或 error、seconds
    """
    results = []
    for name, case in component.cases:
        if results and results[-1].get("error", {}).get("type") == "MemoryError":
            results.append({**results[-1], "case": name})  # 内存已经用光过一次，别再试了
            continue
        fresh_state()
        restore_data(case)
        start = time.perf_counter()
        result = {"case": name}
        try:
            values = case(module)
            result["values"] = {key: normalise(value) for key, value in values.items()}
        except BaseException as error:  # 学习者的代码里可能抛出任何东西，包括 SystemExit
            if isinstance(error, MemoryError):
                error.__traceback__ = None
            result["error"] = describe(error, path, module)
        result["seconds"] = time.perf_counter() - start
        results.append(result)
    return results


def normalise(value):
    """把结果变成好比较、不会再变的样子。

    参数:
        value (object): 用例返回的值

    返回:
        object: 张量断开计算图并复制；数组变张量；其他认不得的东西变成文字
    """
    import numpy
    import torch

    if isinstance(value, torch.Tensor):
        value = value.detach()
        return value if value.is_meta else value.to("cpu").clone()
    if isinstance(value, numpy.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, numpy.generic):
        return value.item()
    if isinstance(value, dict):
        return {key if isinstance(key, (str, int, float, bool, tuple)) else str(key): normalise(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return (list if isinstance(value, list) else tuple)(normalise(each) for each in value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return f"{type(value).__name__}: {value}" if isinstance(value, (torch.dtype, torch.device)) else f"<{type(value).__name__}>"


def describe(error, path, module):
    """把一个异常变成可以传给另一个进程的样子。

    参数:
        error (BaseException): 异常
        path (str): 学习者的文件
        module (ModuleType): 学习者的模块，用来猜打错的名字

    返回:
        dict: type、message、line（在学习者文件里）、chinese
    """
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    message = str(error)
    kind = type(error).__name__
    if isinstance(error, SystemExit):
        chinese = "代码里调用了 sys.exit 或 exit，练习的代码不要自己退出"
    elif isinstance(error, Blocked):
        chinese = message
    elif isinstance(error, MemoryError) or "allocate memory" in message:
        chinese = f"内存超过了限制（{MEMORY // 2**30} GB）：是不是形状写错，或列表一直在变长？"
        kind = "MemoryError"
    else:
        frame = error.__traceback__
        names = list(vars(module))
        while frame:
            names += frame.tb_frame.f_locals if frame.tb_frame.f_code.co_filename == path else []
            frame = frame.tb_next
        chinese = explain.runtime(kind, message, names)
    return {"type": kind, "message": message[:500], "line": frames[-1].lineno if frames else None, "chinese": chinese}


# ── 比较 ──


def brief(value):
    """一个值的简短写法，给人看。

    参数:
        value (object): normalise 之后的值

    返回:
        str: 一行
    """
    import torch

    if isinstance(value, torch.Tensor):
        head = f"{tuple(value.shape)} {str(value.dtype).replace('torch.', '')}"
        if value.is_meta or value.numel() == 0:
            return head
        numbers = [f"{number:.4f}" if isinstance(number, float) else str(number) for number in value.flatten()[:6].tolist()]
        return f"{head} [{', '.join(numbers)}{', …' if value.numel() > 6 else ''}]"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = repr(value) if not isinstance(value, (list, tuple)) or all(isinstance(each, (int, str, bool, type(None))) for each in value) else f"[{', '.join(map(brief, value))}]"
    return text if len(text) <= 160 else text[:157] + "…"


def kind_of(value):
    """一个值的种类，用中文说。

    参数:
        value (object): 值

    返回:
        str: 如 张量、整数
    """
    import torch

    names = {bool: "真假", int: "整数", float: "小数", str: "文字", list: "列表", tuple: "元组", dict: "字典", type(None): "None"}
    return "张量" if isinstance(value, torch.Tensor) else names.get(type(value), type(value).__name__)


def difference(want, got, where=""):
    """两个值第一处不同在哪里。

    参数:
        want (object): 应有的值
        got (object): 得到的值
        where (str): 在结果里的位置，如 [0]

    返回:
        dict 或 None: where、what（哪方面不同）、want、got；相同则为 None
    """
    import torch

    def differ(what, extra=""):
        return {"where": where, "what": what, "want": brief(want), "got": brief(got), "extra": extra}

    if isinstance(want, torch.Tensor) and isinstance(got, torch.Tensor):
        if want.shape != got.shape:
            return differ("形状")
        if want.dtype != got.dtype:
            return differ("数的类型（dtype）")
        if want.device != got.device:
            return differ("设备", f"应在 {want.device}，得到 {got.device}")
        if want.is_meta or want.numel() == 0:
            return None
        if want.is_floating_point() or want.is_complex():
            close = torch.isclose(want, got, rtol=RTOL, atol=ATOL, equal_nan=True)
        else:
            close = want == got
        if bool(close.all()):
            return None
        first = tuple((~close).nonzero()[0].tolist())
        extra = f"{int((~close).sum())} / {close.numel()} 个数不同，第一个在 {list(first)}：应为 {brief(want[first].item())}，得到 {brief(got[first].item())}" if first else ""
        if bool(torch.isnan(got.float()).any()) and not bool(torch.isnan(want.float()).any()):
            extra = "你的结果里有 nan。" + extra
        return differ("数值", extra)
    if type(want) is not type(got):
        return differ("类型", f"应为{kind_of(want)}，得到{kind_of(got)}" + ("：是不是忘了 return？" if got is None else ""))
    if isinstance(want, (list, tuple)):
        if len(want) != len(got):
            return differ("个数", f"应有 {len(want)} 项，得到 {len(got)} 项")
        return next((found for index, pair in enumerate(zip(want, got)) if (found := difference(*pair, f"{where}[{index}]"))), None)
    if isinstance(want, dict):
        if list(map(str, want)) != list(map(str, got)) and set(map(str, want)) != set(map(str, got)):
            less, more = [str(k) for k in want if k not in got], [str(k) for k in got if k not in want]
            return differ("键", "；".join(part for part in (f"少了 {'、'.join(less[:5])}" if less else "", f"多了 {'、'.join(more[:5])}" if more else "") if part))
        return next((found for key in want if (found := difference(want[key], got.get(key), f"{where}[{key!r}]"))), None)
    if isinstance(want, float):
        same = math.isclose(want, got, rel_tol=RTOL, abs_tol=ATOL) or math.isnan(want) and math.isnan(got)
        return None if same else differ("数值")
    return None if want == got else differ("内容")


def compare_case(want, got, limit=3):
    """一个用例的结果与应有的差在哪里。

    参数:
        want (dict): 原文的结果
        got (dict): 被查的结果
        limit (int): 最多说几处

    返回:
        list[dict]: 每处一项，相同则为空
    """
    if "error" in want and "error" in got:
        same = want["error"]["type"] == got["error"]["type"]
        return [] if same else [{"name": "报错", "where": "", "what": "报错的类型", "want": want["error"]["type"], "got": f"{got['error']['type']}: {got['error']['message'][:80]}", "extra": ""}]
    if "error" in want:
        error = want["error"]
        return [{"name": "报错", "where": "", "what": "应该报错", "want": f"{error['type']}: {error['message'][:80]}", "got": "没有报错", "extra": "这种输入应当拒绝"}]
    if "error" in got:
        return [{"name": "运行", "where": "", "what": "报错", "want": "正常结束", "got": f"{got['error']['type']}: {got['error']['message'][:160]}", "extra": ""}]
    found = []
    for name, value in want["values"].items():
        if name not in got["values"]:
            found.append({"name": name, "where": "", "what": "缺少", "want": brief(value), "got": "没有", "extra": ""})
        elif problem := difference(value, got["values"][name]):
            found.append({"name": name, **problem})
    return found[:limit]


def same_outcome(one, other):
    """两次结果是不是一模一样（容差以内；报错则类型和开头的话都相同）。

    参数:
        one (dict): 一个用例的结果
        other (dict): 同一个用例的另一次结果

    返回:
        bool: 相同
    """
    if "error" in one or "error" in other:
        return "error" in one and "error" in other and (one["error"]["type"], one["error"]["message"][:80]) == (other["error"]["type"], other["error"]["message"][:80])
    return not compare_case(one, other) and not compare_case(other, one)


# ── 第一步不同在哪里 ──


def trace(component, module, index, filename):
    """再跑一遍某个用例，记下组件里每个局部变量每次变成了什么。

    参数:
        component (Component): 组件
        module (ModuleType): 模块
        index (int): 第几个用例
        filename (str): 只看这个文件里的函数

    返回:
        dict: 「函数、第几次调用、变量、第几次赋值」到「值、行号」，按发生的次序
    """
    import torch

    events, calls = {}, {}

    def version(value):
        try:
            return value._version if isinstance(value, torch.Tensor) else None
        except RuntimeError:
            return None

    def start(frame, event, arg):
        code = frame.f_code
        if code.co_filename != filename or code.co_name.startswith("<") or len(events) > EVENTS:
            return None
        owner = type(frame.f_locals["self"]).__name__ + "." if "self" in frame.f_locals else ""
        function = owner + code.co_name
        calls[function] = calls.get(function, -1) + 1
        call, seen, counts, line = calls[function], {}, {}, frame.f_lineno
        for name, value in frame.f_locals.items():
            seen[name] = (value, version(value))  # 传进来的参数不算赋值

        def record(name, value):
            if keep(value) and len(events) <= EVENTS:
                counts[name] = counts.get(name, -1) + 1
                events[function, call, name, counts[name]] = (normalise(value), line)

        def follow(frame, event, arg):
            nonlocal line
            if event in ("line", "return"):
                for name, value in frame.f_locals.items():
                    old = seen.get(name)
                    if old is None or old[0] is not value or old[1] != version(value):
                        seen[name] = (value, version(value))
                        record(name, value)
                if event == "return" and arg is not None:
                    line = frame.f_lineno
                    record("返回值", arg)
                line = frame.f_lineno
            return follow

        return follow

    def keep(value, depth=0):
        if isinstance(value, torch.Tensor):
            return value.numel() <= 100_000
        if isinstance(value, (list, tuple)):
            return depth < 2 and len(value) <= 64 and all(keep(each, depth + 1) for each in value)
        return isinstance(value, (bool, int, float)) or isinstance(value, str) and len(value) <= 2000

    fresh_state()
    restore_data(component.cases[index][1])
    old = sys.gettrace()
    sys.settrace(start)
    try:
        component.cases[index][1](module)
    except BaseException:
        pass  # 抛出之前记下的仍然有用
    finally:
        sys.settrace(old)
    return events


def step_of(component, line):
    """原文的某一行属于第几步。

    参数:
        component (Component): 组件
        line (int): 行号

    返回:
        tuple[str, str]: 编号（①②③）和那一步的说明；没有则为空
    """
    lines = component.text.splitlines()
    for number in range(min(line, len(lines)), 0, -1):
        text = lines[number - 1].strip()
        match = cutting.STEP.search(text)  # 有的步骤写在行尾
        if match:
            return match[1], text[match.end() :].strip()
        if text.startswith(("def ", "class ")):
            break
    return "", ""


def first_divergence(component, ours, theirs):
    """逐个比较同名的局部变量，找到最早不同的那一个。

    学习者常把几步合成一行，或换个次序（先缩放再遮），中间的值不同也不算错；所以只看每个变量最后的值
    （赋值的次数相同时才一次次比），而且后面又对上了的，前面的不同就不算。

    参数:
        component (Component): 组件
        ours (dict): 原文的 trace
        theirs (dict): 学习者的 trace

    返回:
        dict 或 None: 变量名、步骤、两边的值、学习者的行号；名字都不同时按数值找
    """
    import torch

    our_lasts, their_lasts = ({key[:3]: key[3] for key in events} for events in (ours, theirs))  # 每个变量最后是第几次赋值
    groups = {}  # 哪个函数的第几次调用 → 可以比较的变量，按原文的次序
    for key in ours:
        name_key = key[:3]
        if name_key not in their_lasts:
            continue
        our_last, their_last = our_lasts[name_key], their_lasts[name_key]
        if our_last == their_last or key[3] == our_last:
            groups.setdefault(key[:2], []).append((key, key if our_last == their_last else (*name_key, their_last)))
    for pairs in groups.values():
        problems = [difference(ours[one][0], theirs[other][0]) for one, other in pairs]
        telling = [isinstance(ours[one][0], (torch.Tensor, list, tuple, str)) for one, _ in pairs]  # 整数碰巧相同，说明不了什么
        good = max((index for index, problem in enumerate(problems) if problem is None and telling[index]), default=-1)
        first = next((index for index, problem in enumerate(problems) if problem and index > good), None)
        if first is None:
            continue
        (function, _, name, _), other = pairs[first]
        if name == "返回值" and good < 0:
            break  # 中间的名字一个都对不上：用了自己的变量名
        mark, text = step_of(component, ours[pairs[first][0]][1])
        last_good = step_of(component, ours[pairs[good][0]][1])[0] if good >= 0 else ""
        return {"function": function, "name": name, "mark": mark, "text": text, "line": theirs[other][1], "last_good": last_good, "by": "名字", **problems[first]}
    last_good, values = "", [value for value, _ in theirs.values() if isinstance(value, torch.Tensor)]
    for (function, _, name, _), (value, line) in ours.items():
        if not isinstance(value, torch.Tensor) or value.numel() < 2:
            continue
        mark, text = step_of(component, line)
        if any(difference(value, other) is None for other in values):
            last_good = mark or name
        elif last_good:
            return {"function": function, "name": name, "mark": mark, "text": text, "line": None, "last_good": last_good, "by": "数值", "what": "", "want": brief(value), "got": "", "extra": "", "where": ""}
    return None


# ── 检查一份代码 ──

CACHE = {}  # 原文和各个错误的结果：watch 时只算一次


def reference(component):
    """原文的模块和结果。

    参数:
        component (Component): 组件

    返回:
        tuple[ModuleType, list[dict]]: 模块和 run_cases 的结果
    """
    if (component.name, "原文") not in CACHE:
        module = build(component)
        CACHE[component.name, "原文"] = module, run_cases(component, module)
    return CACHE[component.name, "原文"]


def mutant_results(component, index):
    """第 index 个常见错误的结果。

    参数:
        component (Component): 组件
        index (int): 第几个

    返回:
        list[dict]: run_cases 的结果；改坏之后连定义都执行不了时，每个用例都是那个错误
    """
    if (component.name, index) not in CACHE:
        try:
            module = build(component, mutate(component, component.mutants[index]))
            results = run_cases(component, module)
        except Exception as error:
            results = [{"case": name, "error": {"type": type(error).__name__, "message": str(error), "line": None, "chinese": ""}, "seconds": 0} for name, _ in component.cases]
        CACHE[component.name, index] = results
    return CACHE[component.name, index]


def diagnose(component, want, got):
    """学习者的结果像哪个常见错误。

    参数:
        component (Component): 组件
        want (list[dict]): 原文的结果
        got (list[dict]): 学习者的结果

    返回:
        list[dict]: 每项有 text（说明）和 exact（全部用例都一样，还是只有出错的第一个用例一样）
    """
    first = next(index for index, pair in enumerate(zip(want, got)) if compare_case(*pair))
    exact, partly = [], []
    for index, mutant in enumerate(component.mutants):
        results = mutant_results(component, index)
        # 都与原文相同的用例不用再比（例如同样是拒绝，话说得不一样也没关系）。
        if all(same_outcome(*pair) or not compare_case(right, pair[0]) and not compare_case(right, pair[1]) for right, *pair in zip(want, results, got)):
            exact.append({"index": index, "text": mutant[2], "exact": True})
        elif same_outcome(results[first], got[first]) and compare_case(want[first], results[first]):
            partly.append({"index": index, "text": mutant[2], "exact": False})
    return exact[:2] or partly[:1]


def judge(component, text, path, guard=contextlib.nullcontext, steps=True):
    """执行学习者的代码，跑用例，比较，找原因。

    参数:
        component (Component): 组件
        text (str): 学习者的文件
        path (str): 它的路径，出现在报告里
        guard (callable): 返回一个上下文，学习者的代码只在它里面运行
        steps (bool): 要不要逐行对照，找第一步不同

    返回:
        dict: 报告，可以转成 JSON
    """
    reference_module, want = reference(component)
    module = types.ModuleType("practice_learner")
    sys.modules[module.__name__] = module
    module.__file__ = path
    started = time.perf_counter()
    with guard() as watcher:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exec(compile(text, path, "exec"), module.__dict__)
        except BaseException as error:
            found = describe(error, path, module)
            return {"ok": False, "kind": "module_error", "error": found, "message": f"还没开始检查，文件自己运行时就出错了：{found['chinese']}", "line": found["line"]}
    tampered = list(watcher.tampered) if watcher else []
    missing = [name for each in [*cutting.all_needs(component), component] for name in [*each.parts, *each.extra] if not hasattr(module, name)]
    if missing:
        return {"ok": False, "kind": "missing", "message": f"文件里没有 {'、'.join(missing)}", "line": None, "advice": "沿用区被删掉了的话，用 reset 重新生成"}
    with guard() as watcher:
        got = run_cases(component, module, path)
    tampered += list(watcher.tampered) if watcher else []
    if tampered:
        names = "、".join(dict.fromkeys(tampered))
        return {"ok": False, "kind": "tamper", "message": f"你的代码改了别人的东西：{names}", "line": None, "advice": "只写自己的组件，不要给 torch 或 Python 自带的名字重新赋值"}
    report = {"kind": "result", "seconds": time.perf_counter() - started, "cases": []}
    for mine, ours in zip(got, want):
        problems = compare_case(ours, mine)
        report["cases"].append({"name": ours["case"], "ok": not problems, "problems": problems, "error": mine.get("error") if problems else None})
    report["ok"] = all(case["ok"] for case in report["cases"])
    if not report["ok"]:
        first = next(index for index, case in enumerate(report["cases"]) if not case["ok"])
        report["mutants"] = diagnose(component, want, got)
        if not steps:
            return report
        ours = trace(component, reference_module, first, str(cutting.ROOT / component.source))
        with guard():
            theirs = trace(component, module, first, path)
        report["step"] = first_divergence(component, ours, theirs)
    return report


def verify(component, tick=lambda name: None):
    """维护者用：这个组件的用例和常见错误站得住吗。

    参数:
        component (Component): 组件
        tick (callable): 每换一步就调用，参数是那一步的名字；卡住时好知道卡在哪里

    返回:
        dict: problems（必须改）、notes（看看就好）、mutants（每个被哪个用例抓到，与谁分不清）
    """
    problems, notes = [], []
    tick("原文")
    try:
        component.text, cutting.preamble(component)
    except (ValueError, SyntaxError) as error:
        return {"problems": [str(error)], "notes": [], "mutants": []}
    for key in ("title", "section", "task"):
        if not component.spec.get(key):
            problems.append(f"没有写 {key}")
    wrong = cutting.blanked(component)[2]
    problems += [f"挖空「{expression}」不在代码里，或挖了就不是合法的 Python" for expression in wrong]
    for level in (1, 2, 3, 4):
        try:
            compile(cutting.practice_text(component, level), "practice", "exec")
        except SyntaxError as error:
            problems.append(f"第 {level} 级的文件语法不对：{error}")
        found = cutting.inspect(component, cutting.practice_text(component, level))[0]
        if found is None and any(cutting.occurrences(component.text, word) for word in ("return", "self.")) and not (level == 1 and not component.blanks):
            problems.append(f"第 {level} 级的题目什么都没写就已经齐全了")
        solved, notes_ = cutting.inspect(component, cutting.practice_text(component, level, component.body))
        if solved or notes_:
            problems.append(f"第 {level} 级放上原文，却说：{solved or notes_}")
    earlier = [each.name for each in cutting.all_needs(component) if each.order > component.order]
    problems += [f"needs 里的 {name} 排在它后面" for name in earlier]
    module, want = reference(component)
    again = run_cases(component, module)
    for one, two in zip(want, again):
        if not same_outcome(one, two):
            problems.append(f"用例「{one['case']}」在原文上跑两次，结果不同：种子没有固定")
        if one["seconds"] > 0.3 and two["seconds"] > 0.3:
            notes.append(f"用例「{one['case']}」用了 {two['seconds']:.2f} 秒，最好 0.3 秒以内")
        if one.get("error", {}).get("type") in ("NameError", "AttributeError", "TypeError", "ImportError", "ModuleNotFoundError", "SyntaxError", "UnboundLocalError"):
            problems.append(f"用例「{one['case']}」在原文上就报 {one['error']['type']}: {one['error']['message'][:200]}")
    table = []
    for index, mutant in enumerate(component.mutants):
        tick(f"错误 {index + 1}「{mutant[0]} → {mutant[1]}」")
        try:
            compile(mutate(component, mutant), "mutant", "exec")
        except (ValueError, SyntaxError) as error:
            problems.append(f"错误 {index + 1}：{error}")
            table.append({"old": mutant[0], "new": mutant[1], "caught": [], "same": []})
            continue
        results = mutant_results(component, index)
        caught = [ours["case"] for ours, theirs in zip(want, results) if compare_case(ours, theirs)]
        if not caught:
            problems.append(f"错误 {index + 1}「{mutant[0]} → {mutant[1]}」没有用例抓得到")
        table.append({"old": mutant[0], "new": mutant[1], "caught": caught, "same": [], "results": index})
    for one in table:
        for other in table:
            if one is not other and "results" in one and "results" in other and all(map(same_outcome, mutant_results(component, one["results"]), mutant_results(component, other["results"]))):
                one["same"].append(table.index(other) + 1)
    if len(component.mutants) < 4:
        notes.append(f"只有 {len(component.mutants)} 个常见错误，最好 4 个以上")
    return {"problems": problems, "notes": notes, "mutants": table}


# ── 关住学习者的代码 ──


class Blocked(PermissionError):
    """学习者的代码想做练习里不该做的事。"""


FORBIDDEN = {
    "os.fork": "开新进程", "os.forkpty": "开新进程", "os.exec": "换成别的程序", "os.posix_spawn": "开新进程", "os.spawn": "开新进程", "os.system": "运行命令",
    "subprocess.Popen": "开新进程", "os.kill": "结束进程", "os.killpg": "结束进程", "socket.connect": "联网", "os.startfile": "打开程序",
    "resource.setrlimit": "改资源限制", "resource.prlimit": "改资源限制",
}
TOUCHING = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown", "os.utime", "shutil.rmtree", "shutil.move", "shutil.copyfile"}


class Sink(io.RawIOBase):
    """收下打印的字，只留开头一点，其余只数个数。"""

    def __init__(self):
        super().__init__()
        self.count, self.head = 0, b""

    def close(self):
        """不关：外面的包装用完会来关它，可它还要接着收下一段。"""

    def writable(self):
        """可以写。

        返回:
            bool: True
        """
        return True

    def write(self, data):
        """收下一段。

        参数:
            data (bytes): 打印的字

        返回:
            int: 收了几个字节
        """
        data = bytes(data)
        self.count += len(data)
        if len(self.head) < PRINT_LIMIT:
            self.head += data[: PRINT_LIMIT - len(self.head)]
        return len(data)


class Sandbox:
    """学习者的代码只在 with sandbox(): 里运行：打印收走，不许写别处的文件、开进程、改 torch，限时限内存。

    参数:
        folder (str): 可以写的临时文件夹
        hang_file (file): 超时的时候，卡在哪一行写到这里
        seconds (float): 最多运行多久
        memory (int): 最多再用多少字节
    """

    def __init__(self, folder, hang_file, seconds, memory=MEMORY):
        import numpy
        import torch

        self.folder, self.hang_file, self.seconds, self.memory = os.path.realpath(folder), hang_file, seconds, memory
        self.armed, self.tampered, self.out = False, [], Sink()
        self.owner = os.getpid()
        nn = torch.nn
        self.watched = [torch, nn, nn.functional, torch.Tensor, nn.Module, nn.Linear, nn.Embedding, nn.Dropout, nn.Sequential, torch.optim, torch.utils.data, builtins, math, random, numpy]
        self.original, self.torch_folder = [], os.path.dirname(torch.__file__)
        sys.addaudithook(self.audit)

    def audit(self, event, arguments):
        """Python 在做敏感的事之前会来问一声。

        参数:
            event (str): 什么事
            arguments (tuple): 细节

        异常:
            Blocked: 不许做
        """
        if not self.armed:
            return
        if event in FORBIDDEN:
            raise Blocked(f"练习的代码不该{FORBIDDEN[event]}（{event}），这一步被拦下了")
        if event == "open":
            path, mode, flags = arguments
            writing = (isinstance(mode, str) and set(mode) & set("wax+")) or (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND))
            if writing and not self.allowed(path):
                raise Blocked(f"练习的代码不该写文件（{str(path)[-60:]}），这一步被拦下了")
        elif event in TOUCHING and not all(self.allowed(path) for path in arguments if isinstance(path, (str, bytes, os.PathLike))):
            raise Blocked(f"练习的代码不该改动文件（{event}），这一步被拦下了")

    def allowed(self, path):
        """这个路径可不可以写。

        参数:
            path (str): 路径，或已打开的文件的编号

        返回:
            bool: 在自己的临时文件夹里
        """
        if isinstance(path, int) or path in (os.devnull, b"/dev/null"):
            return True
        full = os.path.realpath(os.fsdecode(path))
        return full == self.folder or full.startswith(self.folder + os.sep)

    def restore(self):
        """看看 torch 和 Python 自带的名字有没有被换掉，换掉的换回来。"""
        for owner, original in self.original:
            now = vars(owner)
            for name, value in original.items():
                changed = now.get(name, self)
                code = getattr(changed, "__code__", None)
                if changed is not value and code is not None and code.co_filename.startswith(self.torch_folder) and changed.__name__ == name:
                    continue  # torch 自己包了一层：第一次用优化器时，它会包一下 manual_seed
                if changed is not value and name != "_":
                    with contextlib.suppress(Exception):
                        setattr(owner, name, value)
                    self.tampered.append(f"{getattr(owner, '__name__', owner)}.{name}")

    @contextlib.contextmanager
    def __call__(self):
        """进出沙盒。

        返回:
            Sandbox: 出来之后，tampered 里是被换掉过的名字
        """
        self.tampered, self.original = [], [(owner, dict(vars(owner))) for owner in self.watched]
        old = sys.stdout, sys.stderr
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(self.out, 1), encoding="utf-8", errors="replace", write_through=True)
        sys.stderr = io.TextIOWrapper(io.BufferedWriter(Sink(), 1), encoding="utf-8", errors="replace", write_through=True)
        faulthandler.dump_traceback_later(self.seconds, exit=True, file=self.hang_file)
        soft = limit_memory(self.memory)
        self.armed = True
        try:
            yield self
        finally:
            self.armed = False
            unlimit_memory(soft)
            faulthandler.cancel_dump_traceback_later()
            if os.getpid() != self.owner:
                os._exit(0)  # 万一还是分身了，分身到此为止
            with contextlib.suppress(Exception):
                sys.stdout.flush()
            sys.stdout, sys.stderr = old
            sys.settrace(None)
            self.restore()


def limit_memory(extra):
    """从现在起，最多再用这么多内存。Linux 由系统来管；macOS 的系统不管，用一个线程盯着；Windows 不限。

    参数:
        extra (int): 字节

    返回:
        object: 交给 unlimit_memory
    """
    try:
        import resource
    except ImportError:
        return None
    statm = Path("/proc/self/statm")
    if statm.is_file() and not os.environ.get("LLM_PRACTICE_POLL"):
        size = int(statm.read_text().split()[0]) * resource.getpagesize()
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (size + extra if hard == resource.RLIM_INFINITY else min(size + extra, hard), hard))
        return (soft, hard)
    unit = 1 if sys.platform == "darwin" else 1024
    base, stop = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, threading.Event()

    def poll():
        while not stop.wait(0.1):
            if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit > base + extra:
                os._exit(77)  # 父进程认得这个退出码：内存超限

    threading.Thread(target=poll, daemon=True).start()
    return stop


def unlimit_memory(saved):
    """撤掉 limit_memory 的限制。

    参数:
        saved (object): limit_memory 的返回值
    """
    if isinstance(saved, tuple):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, saved)
    elif saved is not None:
        saved.set()


def own_threads():
    """有几个线程，tqdm 看管进度条的那个不算（它不碍事）。

    返回:
        int: 个数
    """
    return sum(not type(thread).__module__.startswith("tqdm") for thread in threading.enumerate())


def main():
    """一行 JSON 请求，一行 JSON 回答，直到输入关上。"""
    token, folder = sys.argv[1], sys.argv[2]
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)  # 学习者直接写 1 号、2 号文件，或用 input()，都碰不到与父进程的通道
    sys.stdin = open(os.devnull, encoding="utf-8")
    owner = os.getpid()

    def answer(**what):
        if os.getpid() == owner:
            answers.write(json.dumps({"token": token, **what}, ensure_ascii=False, default=str) + "\n")
            answers.flush()

    sys.dont_write_bytecode = True
    os.chdir(folder)
    os.environ["TMPDIR"] = os.environ["TEMP"] = os.environ["TMP"] = folder
    try:
        import torch
    except ImportError as error:
        answer(result={"ok": False, "kind": "setup", "message": f"导入不了 torch（{error}）：先运行 bash setup/run.sh，或 python -m pip install -r requirements.txt"})
        return
    torch.set_num_threads(1)  # 用例都很小，多线程反而慢；一台机器上几个检查一起跑也不互相挤
    warnings.simplefilter("ignore")
    with contextlib.suppress(Exception):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        resource.setrlimit(resource.RLIMIT_FSIZE, (256 * 2**20, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    hang_file = open(os.path.join(folder, "hang.txt"), "w+", encoding="utf-8")
    sandbox = Sandbox(folder, hang_file, 10)
    threads = own_threads()
    answer(phase="ready")
    for line in requests:
        request = json.loads(line)
        hang_file.seek(0)
        hang_file.truncate()
        try:
            component = cutting.components()[request["name"]]
            if request["action"] == "verify":
                def tick(what, limit=request["limit"]):
                    faulthandler.dump_traceback_later(limit, exit=True, file=hang_file)
                    answer(phase=what)

                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    result = verify(component, tick)
                faulthandler.cancel_dump_traceback_later()
            else:
                reference(component)
                answer(phase="running")
                sandbox.seconds, sandbox.memory, sandbox.out = request["limit"], request.get("memory", MEMORY), Sink()
                result = judge(component, request["text"], request["path"], sandbox)
                result["prints"] = {"count": sandbox.out.count, "head": sandbox.out.head.decode("utf-8", "replace")[:200]}
        except MemoryError:
            result = {"ok": False, "kind": "memory", "message": f"内存超过了限制（{MEMORY // 2**30} GB）", "line": None}
        except BaseException as error:
            faulthandler.cancel_dump_traceback_later()
            result = {"ok": False, "kind": "internal", "message": f"检查工具自己出错了：{type(error).__name__}: {error}", "detail": traceback.format_exc()[-3000:], "line": None}
        # 弄脏了（改过 torch、用光过内存、留下了线程）就请父进程换一个新的。
        dirty = result["kind"] in ("tamper", "memory", "internal") if "kind" in result else False
        dirty = dirty or own_threads() > threads or any((case.get("error") or {}).get("type") == "MemoryError" for case in result.get("cases", []))
        answer(result=result, dirty=dirty)


if __name__ == "__main__":
    main()
