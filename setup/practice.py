"""手敲练习：把书里的每个组件从头敲一遍，写错了告诉你错在哪一步、像哪种常见错误，快忘的时候再提醒你敲一遍

题目从章节脚本里现切，答案就是章节脚本，所以永远对得上。怎样用它学习，见 setup/practice.md。

运行：
    python setup/practice.py                         # 你学到哪里了，下一条命令是什么
    python setup/practice.py start LayerNorm         # 出题，写到 ch04/practice/LayerNorm.py
    python setup/practice.py check LayerNorm         # 检查
    python setup/practice.py --help                  # 全部命令
    检查一次约 2 秒，0.3 GB（2 核 CPU）；watch 时每次存盘不到 1 秒
"""

import argparse
import difflib
import os
import re
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent / "practice_engine"), str(Path(__file__).resolve().parent)]
from chinese_cli import ChineseParser

import client
import cutting
import records

PACKAGES = "python -m pip install -r setup/requirements-practice.txt"
SUMMARIES = {  # 每章的总结脚本：run chXX 运行的就是它
    "ch02": "ch02/main/dataloader.py",
    "ch03": "ch03/main/multihead_attention.py",
    "ch04": "ch04/main/gpt.py",
    "ch05": "ch05/main/gpt_train.py",
    "ch06": "ch06/main/gpt_class_finetune.py",
    "ch07": "ch07/main/gpt_instruction_finetuning.py",
    "appendix-A": "appendix-A/main/ddp_torchrun.py",
}
CHAPTERS = {"ch02": "第 2 章", "ch03": "第 3 章", "ch04": "第 4 章", "ch05": "第 5 章", "ch06": "第 6 章", "ch07": "第 7 章", "appendix-A": "附录 A"}
COMMANDS = """命令（NAME 是组件名，写开头几个字母或中文标题也行；不写就是正在练的那个）：
  （不写命令）               你学到哪里了，下一条命令是什么
  list [chXX]                全部组件
  start NAME [--level N]     出题：1 填空　2 看着步骤写　3 看着签名和形状写　4 只看题目写
  check [NAME]               检查一次
  watch [NAME]               每次存盘自动检查，按 Ctrl+C 结束
  hint [NAME]                要一条提示，越往后越具体
  diff [NAME]                与标准答案逐行对照（这一回就算没记住）
  reset [NAME]               重新出题，旧的留一份备份
  review [NAME]              今天该复习什么；写上 NAME 就开始复习它
  progress [--readme]        进度表；--readme 印成 Markdown，贴到自己的 README 里
  stats                      练了几天、敲会几个、用了多久，画成图
  run chXX [参数…]           运行那一章的总结脚本，其中的组件换成你敲的
维护用：
  verify [NAME 或 chXX]      用例抓不抓得住每个常见错误"""
TAKES_OPTIONS = {"level": ("start", "review", "reset"), "force": ("start",), "readme": ("progress",), "limit": ("check", "watch", "verify")}


def need(package):
    """导入一个练习用的包；没有装就抛出一句说清怎么装的话。

    参数:
        package (str): 包名

    返回:
        module: 包

    异常:
        ValueError: 没有装
    """
    try:
        return __import__(package)
    except ImportError:
        raise ValueError(f"要先装 {package} 这个包：{PACKAGES}") from None


def console():
    """rich 的终端：表格、颜色、按终端的宽度换行。

    返回:
        rich.console.Console: 输出到 stdout

    异常:
        ValueError: 没有装 rich
    """
    need("rich")
    from rich.console import Console

    width = None if sys.stdout.isatty() else 120  # 输出到文件时没有宽度可问
    return Console(highlight=False, markup=False, emoji=False, width=width, soft_wrap=True)


def table(*columns, title=None):
    """一张表。

    参数:
        columns (str): 表头
        title (str): 标题

    返回:
        rich.table.Table: 还没有行的表
    """
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def shown(path):
    """一个路径的短写法：相对当前文件夹，编辑器的终端里点得开。

    参数:
        path (Path): 路径

    返回:
        str: 相对路径；不在当前文件夹里则是全路径
    """
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def write_safely(path, text):
    """先写临时文件再改名：中途断电，旧的还在。

    参数:
        path (Path): 写到哪里
        text (str): 内容
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def read_practice(component):
    """读学习者的练习文件。

    参数:
        component (Component): 组件

    返回:
        str: 内容

    异常:
        ValueError: 还没有开始，或不是 UTF-8
    """
    try:
        return component.path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"还没有 {shown(component.path)}，先运行 python setup/practice.py start {component.name}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{shown(component.path)} 不是 UTF-8 编码，请用编辑器另存为 UTF-8") from None


def current(entries):
    """正在练的组件：最近一次动过的。

    参数:
        entries (list[dict]): 记录

    返回:
        Component 或 None: 没练过则为 None
    """
    names = [entry["name"] for entry in entries if entry["name"] in cutting.components()]
    return cutting.components()[names[-1]] if names else None


def choose(name, entries):
    """命令行上的名字是哪个组件；没写就是正在练的。

    参数:
        name (str 或 None): 命令行上的名字
        entries (list[dict]): 记录

    返回:
        Component: 组件

    异常:
        ValueError: 没有，不止一个，或没写名字又没有正在练的
    """
    if name:
        return cutting.find(name)
    found = current(entries)
    if found is None:
        raise ValueError("还没有开始练，先运行 python setup/practice.py start（从第一个开始）")
    return found


def chapter_of(text):
    """ch04、4、第 4 章、A 都认。

    参数:
        text (str): 命令行上的字

    返回:
        str 或 None: 章节的文件夹名；认不出则为 None
    """
    low = text.lower().replace(" ", "")
    if low in ("a", "appendix-a", "appendix_a", "appendixa", "附录a"):
        return "appendix-A"
    match = re.fullmatch(r"(?:ch|第)?0?([2-7])章?", low)
    return f"ch0{match[1]}" if match else None


def states(entries):
    """每个组件现在是 未开始、练习中、已通过 还是 待复习。

    参数:
        entries (list[dict]): 记录

    返回:
        tuple[dict, dict, dict]: 名字到状态；records.status 的结果；名字到复习日程（没有 fsrs 则为空）
    """
    status = records.status(entries)
    try:
        due = records.schedule(entries)
    except ImportError:
        due = {}
    now, found = datetime.now(timezone.utc), {}
    for name in cutting.components():
        one = status.get(name)
        if one is None:
            found[name] = "未开始"
        elif not one["best"]:
            found[name] = "练习中"
        else:
            found[name] = "待复习" if name in due and due[name]["due"] <= now else "已通过"
    return found, status, due


def days(when):
    """一个时刻离今天几天，用中文说。

    参数:
        when (datetime): 时刻

    返回:
        str: 如 3 天后（11 月 28 日）
    """
    local = when.astimezone()
    gap = (local.date() - datetime.now().astimezone().date()).days
    word = "今天" if gap == 0 else f"{gap} 天后" if gap > 0 else f"过期 {-gap} 天"
    return f"{word}（{local.month} 月 {local.day} 日）"


def next_component(state, after=None):
    """按学习次序，下一个还没通过的组件。

    参数:
        state (dict): 名字到状态
        after (Component 或 None): 从它后面找起；后面都通过了，再回到开头

    返回:
        Component 或 None: 全部通过则为 None
    """
    waiting = [cutting.components()[name] for name, word in state.items() if word in ("未开始", "练习中")]
    later = [each for each in waiting if after is not None and each.order > after.order]
    return next(iter(later + waiting), None)


# ── 各个命令 ──


def show_home(entries):
    """不写命令时：学到哪里了，下一条命令是什么。

    参数:
        entries (list[dict]): 记录
    """
    screen = console()
    state, status, _ = states(entries)
    done = sum(word in ("已通过", "待复习") for word in state.values())
    screen.print(f"手敲练习：{len(state)} 个组件，敲会了 {done} 个" + (f"，今天该复习 {list(state.values()).count('待复习')} 个" if "待复习" in state.values() else ""))
    waiting = [name for name, word in state.items() if word == "待复习"]
    now = current(entries)
    if now and not status[now.name]["passed"] and now.path.is_file():
        one = status[now.name]
        screen.print(f"正在练 {now.name}（{now.title}，{now.place}，第 {one['level']} 级），文件 {shown(now.path)}，检查过 {one['tries']} 次")
        command = f"check {now.name}"
    elif waiting:
        screen.print(f"快要忘的：{'、'.join(waiting[:5])}")
        command = f"review {waiting[0]}"
    else:
        following = next_component(state, now)
        if following is None:
            screen.print("全部敲会了。想再难一点，用 --level 4 从头再来一遍。")
            command = "progress"
        else:
            screen.print(f"下一个是 {following.name}（{following.title}，{following.place}）：先看 {following.source}，再合上它")
            command = f"start {following.name}"
    screen.print(f"\n接下来输入：python setup/practice.py {command}", style="bold")


def show_list(entries, name):
    """列出全部组件，或一章的。

    参数:
        entries (list[dict]): 记录
        name (str 或 None): 章节

    异常:
        ValueError: 没有这一章
    """
    wanted = chapter_of(name) if name else None
    if name and wanted is None:
        raise ValueError(f"list 后面写章节，如 list ch04，不认识 {name}")
    screen = console()
    state, status, _ = states(entries)
    rows = table("节", "组件", "做什么", "状态", "级别")
    for component in cutting.components().values():
        if wanted in (None, component.chapter):
            best = status.get(component.name, {}).get("best", 0)
            rows.add_row(component.section, component.name, component.title, state[component.name], str(best or ""))
    screen.print(rows)
    screen.print("级别是通过的最高一级（1 填空 → 4 只看题目写）。开始练：python setup/practice.py start 组件名")


def start(entries, component, level, force, event="start"):
    """出题。

    参数:
        entries (list[dict]): 记录
        component (Component): 组件
        level (int 或 None): 第几级；None 时比通过的最高级高一级
        force (bool): 已有练习文件时，备份之后重新出题
        event (str): 记在记录里的名字

    异常:
        ValueError: 已有练习文件而没有 force，或原文有问题
    """
    screen = console()
    best = records.status(entries).get(component.name, {}).get("best", 0)
    level = level or min(best + 1, 4)
    text = cutting.practice_text(component, level)
    backup = None
    if component.path.exists():
        try:
            old = read_practice(component)
        except ValueError:
            old = None  # 读不懂也是学习者的东西，照样不覆盖
        if old not in [cutting.practice_text(component, each) for each in cutting.LEVELS]:  # 一个字没动过的题目，换级别时不算作品
            if not force:
                raise ValueError(f"{shown(component.path)} 已经有了，接着写就行；要重新出题，加 --force（旧的会留一份备份）")
            backup = component.path.parent / "backup" / f"{component.name}-{datetime.now():%Y%m%d-%H%M%S-%f}.py"
            backup.parent.mkdir(parents=True, exist_ok=True)
            os.replace(component.path, backup)
    write_safely(component.path, text)
    records.append(event, component.name, level=level)
    if backup:
        screen.print(f"旧的练习移到了 {shown(backup)}")
    screen.print(f"已出题：{shown(component.path)}　{component.title}，第 {level} 级：{cutting.LEVELS[level]}", style="bold")
    screen.print(component.task)
    needs = cutting.all_needs(component)
    if needs:
        screen.print(f"用到的 {'、'.join(each.name for each in needs)} 已经在文件的沿用区里，不用敲。")
    screen.print(f"写好之后：python setup/practice.py check {component.name}，或先开着 python setup/practice.py watch {component.name}，存盘就检查")


def check_once(component, limit, worker=None):
    """检查一次，印出报告，记下来。

    参数:
        component (Component): 组件
        limit (float): 学习者的代码最多运行几秒
        worker (Worker 或 None): 热好的考官

    返回:
        bool: 通过了
    """
    screen = console()
    text = read_practice(component)
    report = client.check(component, text, limit, worker)
    level = cutting.level_of(text)
    details = {"ok": report["ok"], "kind": report["kind"], "level": level, "seconds": round(report["total"], 2), "digest": records.digest(text)}
    if report["kind"] in ("setup", "internal"):  # 不是学习者的错，不记
        screen.print(f"✗ {report['message']}", style="bold red")
        screen.print(report.get("detail", ""))
        return False
    if report["ok"]:
        one = records.status(records.read()).get(component.name)
        fresh = one is None or not one["passed"]
        if fresh:
            minutes = (datetime.now(timezone.utc) - one["started"]).total_seconds() / 60 if one and one["started"] else 0
            details["grade"] = records.grade(level, minutes, *((one["fails"], one["hints"], one["looked"]) if one else (0, 0, False)))
        write_safely(records.FOLDER / "passed" / f"{component.name}.py", text)  # run chXX 用的是这一份
    elif report.get("mutants"):
        details["mutant"] = report["mutants"][0]["text"].split("。")[0]
    records.append("check", component.name, **details)
    if report["ok"]:
        show_pass(screen, component, report, level)
    else:
        show_failure(screen, component, report, text)
    return report["ok"]


def show_pass(screen, component, report, level):
    """通过的报告。

    参数:
        screen (Console): 终端
        component (Component): 组件
        report (dict): client.check 的报告
        level (int): 第几级
    """
    screen.print(f"✓ {component.name} 通过：第 {level} 级，{len(report['cases'])} 个用例，{report['total']:.1f} 秒", style="bold green")
    show_notes(screen, report)
    entries = records.read()
    state, _, due = states(entries)
    if component.name in due:
        screen.print(f"下次复习：{days(due[component.name]['due'])}")
    following = next_component(state, component)
    if level < 4:
        screen.print(f"想再难一点：python setup/practice.py start {component.name} --level {level + 1} --force")
    if following:
        screen.print(f"下一个：python setup/practice.py start {following.name}")


def show_notes(screen, report):
    """打印了东西、签名略有不同之类的提醒。

    参数:
        screen (Console): 终端
        report (dict): 报告
    """
    prints = report.get("prints", {})
    if prints.get("count"):
        head = prints["head"].strip().splitlines()
        screen.print(f"提醒：你的代码打印了 {prints['count']} 个字节，检查时都收走了" + (f"，开头是：{head[0][:60]}" if head else ""), style="yellow")
    for note in report["notes"]:
        screen.print(f"提醒：{note}", style="yellow")


def show_failure(screen, component, report, text):
    """没通过的报告：哪个用例、应为什么、得到什么、从哪一步分开、像哪个常见错误。

    参数:
        screen (Console): 终端
        component (Component): 组件
        report (dict): client.check 的报告
        text (str): 学习者的文件
    """
    lines = text.splitlines()

    def point(line):
        if line and 0 < line <= len(lines):
            screen.print(f"  {shown(component.path)}:{line}", style="cyan")
            screen.print(f"    {lines[line - 1].strip()}")

    if "cases" not in report:
        screen.print(f"✗ {component.name}：{report['message']}", style="bold red")
        point(report.get("line"))
        if report.get("advice"):
            screen.print(f"  {report['advice']}")
        show_notes(screen, report)
        return
    wrong = [case for case in report["cases"] if not case["ok"]]
    screen.print(f"✗ {component.name}：{len(report['cases'])} 个用例里有 {len(wrong)} 个没通过（{report['total']:.1f} 秒）", style="bold red")
    rows = table("用例", "", "哪里不同")
    for case in report["cases"]:
        rows.add_row(case["name"], "✓" if case["ok"] else "✗", "；".join(f"{p['name']}{p['where']}：{p['what']}" for p in case["problems"]))
    screen.print(rows)
    first = wrong[0]
    if first["error"] and first["problems"][0]["what"] in ("报错", "报错的类型"):
        error = first["error"]
        screen.print(f"「{first['name']}」运行时出错：{error['chinese']}", style="bold")
        point(error["line"])
        if not error["line"]:
            screen.print("  出错的地方不在你的文件里，是用例拿到你的结果之后出的错：看看返回的是不是张量，形状对不对")
        if error["message"]:
            screen.print(f"  原来的报错：{error['type']}: {error['message'].splitlines()[0][:200]}", style="dim")
    else:
        for problem in first["problems"][:1]:
            screen.print(f"「{first['name']}」里的「{problem['name']}{problem['where']}」：{problem['what']}不同" if problem["what"] not in ("缺少", "应该报错") else f"「{first['name']}」：{problem['what']}", style="bold")
            screen.print(f"  应为 {problem['want']}\n  得到 {problem['got']}")
            if problem["extra"]:
                screen.print(f"  {problem['extra']}")
    step = report.get("step")
    if step:
        where = f"第 {step['mark']} 步「{step['text'].split('。')[0]}」" if step["mark"] else ""
        if step["by"] == "名字":
            screen.print(f"最早分开的地方：{where}{step['function']} 里的 {step['name']}{step['where']}，{step['what']}不同" + (f"（到 {step['last_good']} 为止都对）" if step["last_good"] and step["last_good"] != step["mark"] else ""), style="bold")
            point(step["line"])
            screen.print(f"  应为 {step['want']}\n  得到 {step['got']}" + (f"\n  {step['extra']}" if step["extra"] else ""))
        else:
            screen.print(f"变量名与原文不同，按数值对照：到 {step['last_good']} 为止，中间结果都能在你的代码里找到；{where}原文的 {step['name']} = {step['want']} 没有找到", style="bold")
    for mutant in report.get("mutants", []):
        what, _, why = mutant["text"].partition("。")
        same = "你的结果和" if mutant["exact"] else f"在「{first['name']}」这个用例上，你的结果和"
        screen.print(f"诊断：{same}\"{what}\"一模一样。{why}", style="bold magenta")
    show_notes(screen, report)
    screen.print(f"想不出来：python setup/practice.py hint {component.name}")


def watch(component, limit):
    """每次存盘就检查，直到按 Ctrl+C。

    参数:
        component (Component): 组件
        limit (float): 学习者的代码最多运行几秒

    异常:
        ValueError: 没有装 watchfiles
    """
    watchfiles = need("watchfiles")
    screen = console()
    read_practice(component)
    worker = client.Worker()
    screen.print(f"盯着 {shown(component.path)}，存盘就检查；按 Ctrl+C 结束")
    try:
        check_once(component, limit, worker)
        # 盯文件夹而不是文件：编辑器存盘常常是写一个新文件再改名，盯着旧文件就跟丢了。
        for _ in watchfiles.watch(component.path.parent, watch_filter=lambda _, path: Path(path).name == component.path.name, recursive=False, raise_interrupt=True, step=20):
            screen.print(f"\n── {datetime.now():%H:%M:%S} ──")
            try:
                check_once(component, limit, worker)
            except ValueError as error:
                screen.print(f"✗ {error}", style="bold red")  # 正在改名、暂时读不到，等下一次存盘
    except KeyboardInterrupt:
        screen.print("\n结束。")
    finally:
        worker.close()


def show_hint(entries, component):
    """给一条提示，并记下来。

    参数:
        entries (list[dict]): 记录
        component (Component): 组件
    """
    screen = console()
    given = records.status(entries).get(component.name, {}).get("hints", 0)
    everything = cutting.hints(component)
    if given >= len(everything):
        screen.print(f"{len(everything)} 条提示都给过了。与答案对照：python setup/practice.py diff {component.name}")
        return
    records.append("hint", component.name, number=given + 1)
    screen.print(f"提示 {given + 1} / {len(everything)}　{everything[given]}")


def show_diff(component):
    """与标准答案逐行对照，注释和文档不算。

    参数:
        component (Component): 组件
    """
    screen = console()
    text = read_practice(component)
    try:
        defined, _, _ = cutting.segment(text, component.parts)
        mine = "\n\n\n".join(defined[name] for name in component.parts if name in defined)
        mine = [line for line, _ in cutting.copy_forward.code_lines(mine)]
    except SyntaxError:
        screen.print("你的文件还有语法错误，下面按原样对照")
        mine = text.splitlines()
    right = [line for line, _ in cutting.copy_forward.code_lines(component.body)]
    records.append("diff", component.name)
    found = list(difflib.unified_diff(mine, right, "你写的", component.source, lineterm="", n=2))
    if not found:
        screen.print(f"与 {component.source} 逐行相同（注释和文档不算）")
    for line in found:
        screen.print(line, style={"+": "green", "-": "red", "@": "cyan"}.get(line[0]))


def show_review(entries, name, level):
    """今天该复习什么；写了名字就出题。

    参数:
        entries (list[dict]): 记录
        name (str 或 None): 组件
        level (int 或 None): 第几级

    异常:
        ValueError: 没有装 fsrs，或这个组件还没通过过
    """
    need("fsrs")
    state, status, due = states(entries)
    if name:
        component = cutting.find(name)
        if not status.get(component.name, {}).get("best"):
            raise ValueError(f"{component.name} 还没有通过过，先运行 python setup/practice.py start {component.name}")
        start(entries, component, level, force=True)
        return
    screen = console()
    if not due:
        screen.print("还没有通过任何组件，没有要复习的。")
        return
    rows = table("组件", "做什么", "该复习", "现在还记得的把握", "通过的最高级")
    for each in sorted(due, key=lambda each: due[each]["due"]):
        if each in cutting.components():
            rows.add_row(each, cutting.components()[each].title, days(due[each]["due"]), f"{due[each]['recall']:.0%}", str(status[each]["best"]))
    screen.print(rows)
    waiting = [each for each, word in state.items() if word == "待复习"]
    screen.print(f"接下来输入：python setup/practice.py review {waiting[0]}" if waiting else "今天没有要复习的。", style="bold")


def show_progress(entries, readme):
    """进度表。

    参数:
        entries (list[dict]): 记录
        readme (bool): 印成 Markdown
    """
    state, status, due = states(entries)
    words = ["未开始", "练习中", "已通过", "待复习"]
    chapters = {}
    for component in cutting.components().values():
        chapters.setdefault(component.chapter, []).append(component)
    title = {chapter: CHAPTERS.get(chapter, chapter) for chapter in chapters}
    if readme:
        done = sum(word in ("已通过", "待复习") for word in state.values())
        print(f"手敲练习：{len(state)} 个组件，敲会了 {done} 个（{datetime.now():%Y-%m-%d}）\n")
        print("| 章 | 敲会 | 组件（数字是通过的最高级：1 填空 → 4 只看题目写） |\n|---|---|---|")
        for chapter, members in chapters.items():
            passed = sum(state[c.name] in ("已通过", "待复习") for c in members)
            cells = "　".join(f"{'☑' if status.get(c.name, {}).get('best') else '☐'} `{c.name}`" + (f" {status[c.name]['best']}" if status.get(c.name, {}).get("best") else "") for c in members)
            print(f"| {title[chapter]} | {passed} / {len(members)} | {cells} |")
        return
    screen = console()
    rows = table("章", *words, "组件")
    mark = {"未开始": "·", "练习中": "…", "已通过": "✓", "待复习": "!"}
    for chapter, members in chapters.items():
        counts = [str(sum(state[c.name] == word for c in members) or "") for word in words]
        rows.add_row(title[chapter], *counts, "　".join(f"{mark[state[c.name]]}{c.name}" for c in members))
    screen.print(rows)
    screen.print("· 未开始　… 练习中　✓ 已通过　! 待复习")
    if not due and any(word == "已通过" for word in state.values()):
        screen.print(f"装上 fsrs 才知道什么时候该复习：{PACKAGES}")


def show_stats(entries):
    """画出练了几天、敲会几个、时间花在哪里。

    参数:
        entries (list[dict]): 记录

    异常:
        ValueError: 还没有记录
    """
    if not entries:
        raise ValueError("还没有记录，先练一个：python setup/practice.py start")
    screen = console()
    status = records.status(entries)
    minutes, passed, last = {}, {}, {}
    for entry in entries:
        day = entry["when"].astimezone().date()
        gap = (entry["when"] - last[entry["name"]]).total_seconds() / 60 if entry["name"] in last else 0
        minutes[day] = minutes.get(day, 0) + (gap if 0 < gap <= 30 else 0)
        last[entry["name"]] = entry["when"]
        if entry["event"] == "check" and entry.get("ok"):
            passed.setdefault(entry["name"], day)
    longest = sorted(((one["minutes"], name) for name, one in status.items()), reverse=True)[:12]
    screen.print(f"练了 {len(minutes)} 天，敲会 {len(passed)} / {len(cutting.components())} 个组件，一共 {sum(minutes.values()):.0f} 分钟，检查 {sum(one['tries'] for one in status.values())} 次")

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    import zhplot  # noqa: F401　导入它，图上就能写中文

    figure, axes = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    first, today = min(minutes), datetime.now().date()
    ordinals = range(first.toordinal(), max(today, max(minutes)).toordinal() + 1)
    dates = [datetime.fromordinal(day) for day in ordinals]
    axes[0].bar(dates, [minutes.get(day.date(), 0) for day in dates], color="tab:blue")
    axes[0].set_title("每天练了几分钟")
    axes[1].step(dates, [sum(when <= day.date() for when in passed.values()) for day in dates], where="post", color="tab:green", marker="." if len(dates) < 40 else None)
    axes[1].set_title(f"敲会的组件（共 {len(cutting.components())} 个）")
    axes[1].set_ylim(bottom=0)
    axes[2].barh([name for _, name in reversed(longest)], [value for value, _ in reversed(longest)], color="tab:orange")
    axes[2].set_title("哪些组件花的时间最多（分钟）")
    from matplotlib.dates import AutoDateLocator, DateFormatter

    for axis in axes[:2]:
        axis.xaxis.set_major_locator(AutoDateLocator(maxticks=6, minticks=1, interval_multiples=False))
        axis.xaxis.set_major_formatter(DateFormatter("%m-%d"))
        axis.set_xlim(dates[0].toordinal() - datetime(1970, 1, 1).toordinal() - 0.6, dates[-1].toordinal() - datetime(1970, 1, 1).toordinal() + 0.6)
        axis.grid(axis="y", alpha=0.3)
    records.FOLDER.mkdir(parents=True, exist_ok=True)
    path = records.FOLDER / "stats.png"
    figure.savefig(path, dpi=130)
    screen.print(f"图片已写到 {shown(path)}")


def assemble(script):
    """把一个脚本里的组件换成学习者敲的（通过检查的那一份）。

    参数:
        script (Path): 脚本

    返回:
        tuple[str, list[str], list[str]]: 换过的代码；用了学习者的哪些；这个脚本里还有哪些可以敲
    """
    text = script.read_text(encoding="utf-8")
    lines = text.splitlines()
    relative = script.relative_to(cutting.ROOT).as_posix()
    copied = {(cutting.copy_forward.home(source, name), name) for kind, source, names, *_ in cutting.copy_forward.regions(script) if kind != "改写" for name in names}
    nodes = {name: node for node in cutting.ast.parse(text).body for name in cutting.copy_forward.names_of(node)}
    used, rest, replaced = [], [], []
    for component in cutting.components().values():
        here = [name for name in component.parts if name in nodes and (component.source == relative or (component.source, name) in copied)]
        if len(here) < len(component.parts):
            continue
        path = records.FOLDER / "passed" / f"{component.name}.py"
        if not path.is_file():
            rest.append(component.name)
            continue
        mine, helpers, imported = cutting.segment(path.read_text(encoding="utf-8"), component.parts)
        used.append(component.name)
        for index, name in enumerate(component.parts):
            extra = [*imported, *helpers] if index == 0 else []
            replaced.append((cutting.first_line(nodes[name]), nodes[name].end_lineno, "\n".join([*extra, mine[name]])))
    for first, last, code in sorted(replaced, reverse=True):
        lines[first - 1 : last] = code.splitlines()
    return "\n".join(lines) + "\n", used, rest


def run(name, rest):
    """运行一章的总结脚本，其中的组件换成学习者敲的。

    参数:
        name (str 或 None): chXX，或一个脚本的路径
        rest (list[str]): 给脚本的参数

    返回:
        int: 脚本的退出码

    异常:
        ValueError: 不知道运行什么
    """
    if not name:
        raise ValueError("run 后面写章节，如 run ch04；也可以写一个脚本的路径")
    chapter = chapter_of(name)
    path = cutting.ROOT / SUMMARIES[chapter] if chapter else Path(name).resolve() if Path(name).is_file() else cutting.ROOT / name
    if path.suffix != ".py" or not path.is_file() or not path.is_relative_to(cutting.ROOT):
        raise ValueError(f"不知道 {name} 是哪个脚本：写 ch02 到 ch07、appendix-A，或项目里一个 .py 的路径")
    screen = console()
    text, used, others = assemble(path)
    screen.print(f"运行 {path.relative_to(cutting.ROOT).as_posix()}", style="bold")
    screen.print(f"你敲的（{len(used)} 个）：{'、'.join(used) or '还没有，通过检查的组件才会换上'}", style="green")
    screen.print(f"项目的（{len(others)} 个，还没敲会）：{'、'.join(others) or '无'}\n")
    sys.stdout.flush()
    with tempfile.TemporaryDirectory(prefix="practice_run_") as folder:
        changed = Path(folder) / path.name
        changed.write_text(text, encoding="utf-8")
        return subprocess.run([sys.executable, str(Path(cutting.__file__).parent / "launch.py"), str(path), str(changed), *rest]).returncode


def verify(name, limit):
    """维护者用：每个组件的用例抓不抓得住它的每个常见错误。

    参数:
        name (str 或 None): 组件或章节；None 时全部
        limit (float): 每个错误最多运行几秒

    返回:
        bool: 没有问题
    """
    chapter = chapter_of(name) if name else None
    chosen = [c for c in cutting.components().values() if chapter in (None, c.chapter)] if chapter or not name else [cutting.find(name)]
    worker, screen, bad, total = client.Worker(), console(), 0, 0
    try:
        for component in chosen:
            started = time.perf_counter()
            report = worker.ask(limit, action="verify", name=component.name)
            if "mutants" not in report:  # 卡住或崩溃：说明停在哪个错误上
                report = {"problems": [f"{report['message']}（当时在跑：{report.get('phase', '')}）{report.get('detail', '')}"], "notes": [], "mutants": []}
            total += len(report["mutants"])
            bad += bool(report["problems"])
            screen.print(f"{'✗' if report['problems'] else '✓'} {component.chapter} {component.name}（{component.title}）　{len(component.cases)} 个用例，{len(report['mutants'])} 个错误，{time.perf_counter() - started:.1f} 秒")
            for index, mutant in enumerate(report["mutants"], start=1):
                same = f"　与错误 {'、'.join(map(str, mutant['same']))} 分不清" if mutant["same"] else ""
                if not mutant["caught"] or same or len(chosen) == 1:
                    change = " → ".join(re.sub(r"\s+", " ", part)[:60] for part in (mutant["old"], mutant["new"]))
                    screen.print(f"    {index}. {'抓到：' + '、'.join(mutant['caught']) if mutant['caught'] else '没抓到'}{same}　{change}")
            for problem in report["problems"]:
                screen.print(f"    ✗ {problem}", style="red")
            for note in report["notes"]:
                screen.print(f"    · {note}", style="yellow")
    finally:
        worker.close()
    screen.print(f"{len(chosen)} 个组件，{total} 个常见错误，{bad} 个组件有问题")
    return bad == 0


def main():
    """命令行。"""
    parser = ChineseParser("手敲练习：把书里的每个组件从头敲一遍")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = COMMANDS
    parser.usage = "python setup/practice.py [命令] [NAME] [选项]"
    parser.add_argument("command", nargs="?", metavar="命令", help="见下面；不写就说你学到哪里了")
    parser.add_argument("name", nargs="?", metavar="NAME", help="组件名或章节")
    parser.add_argument("--level", type=int, choices=[1, 2, 3, 4], help="第几级（默认：比通过的最高一级再高一级）")
    parser.add_argument("--force", action="store_true", help="start：已有练习也重新出题，旧的留一份备份")
    parser.add_argument("--readme", action="store_true", help="progress：印成 Markdown")
    parser.add_argument("--limit", type=float, help="check、watch：你的代码最多运行几秒（默认：10）")
    arguments, rest = sys.argv[1:], []
    if arguments[:1] == ["run"] and len(arguments) > 2:
        arguments, rest = arguments[:2], arguments[2:]  # run chXX 后面的都是给那个脚本的
    args = parser.parse_args(arguments)
    names = ("list", "start", "check", "watch", "hint", "diff", "reset", "review", "progress", "stats", "run", "verify")
    if args.command and args.command not in names:
        close = difflib.get_close_matches(args.command, names, 1)
        parser.error(f"没有 {args.command} 这个命令" + (f"，是不是 {close[0]}？" if close else "，可用的有 " + "、".join(names)))
    for option, commands in TAKES_OPTIONS.items():
        if getattr(args, option) not in (None, False) and args.command not in commands:
            parser.error(f"--{option} 只能用在 {'、'.join(commands)} 里")
    if args.limit is not None and not 0 < args.limit <= 600:
        parser.error(f"--limit 要在 0 到 600 秒之间，不能是 {args.limit:g}")
    if args.name and args.command in ("progress", "stats"):
        parser.error(f"{args.command} 后面不写名字")
    try:
        entries = records.read()
        if args.command is None:
            show_home(entries)
        elif args.command == "list":
            show_list(entries, args.name)
        elif args.command == "start":
            component = cutting.find(args.name) if args.name else next_component(states(entries)[0], current(entries)) or next(iter(cutting.components().values()))
            start(entries, component, args.level, args.force)
        elif args.command == "check":
            sys.exit(0 if check_once(choose(args.name, entries), args.limit or 10) else 1)
        elif args.command == "watch":
            watch(choose(args.name, entries), args.limit or 10)
        elif args.command == "hint":
            show_hint(entries, choose(args.name, entries))
        elif args.command == "diff":
            show_diff(choose(args.name, entries))
        elif args.command == "reset":
            component = choose(args.name, entries)
            start(entries, component, args.level or cutting.level_of(read_practice(component)), True, "reset")
        elif args.command == "review":
            show_review(entries, args.name, args.level)
        elif args.command == "progress":
            show_progress(entries, args.readme)
        elif args.command == "stats":
            show_stats(entries)
        elif args.command == "run":
            sys.exit(run(args.name, rest))
        else:
            sys.exit(0 if verify(args.name, args.limit or 20) else 1)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("\n已停止。")
        sys.exit(130)


if __name__ == "__main__":
    main()
