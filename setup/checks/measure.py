"""量出每个脚本的时间和内存，写进它的开头和 README 的表格

开头写着「约 3 秒，0.3 GB（2 核 CPU）」，读者靠它决定现在跑还是去泡杯茶，所以必须是量出来的。
跑两遍：默认的参数，和 --quick（有的话）。与原来写的相差不到四分之一、或者不到 1 秒、0.1 GB，就不改：每次量都差一点，没有必要。

运行（在空闲的 2 核机器上；先运行过 python ch05/main/gpt_train.py）：
    python setup/checks/measure.py --dry-run                      # 只说会改什么，不写
    python setup/checks/measure.py                                # 全部，要一个多小时
    python setup/checks/measure.py ch03/main/multihead_attention.py setup/self_check.py    # 只量这几个
"""

import ast
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from chinese_cli import ChineseParser

ROOT = Path(__file__).resolve().parents[2]
# 时间是「12 秒」「3 分半」「8 分钟」；还没量过时，数的地方是大写字母，如「N 秒，N GB」。
TIME = r"(?P<amount>\d+(?:\.\d+)?|[A-Z]+) (?P<unit>秒|分钟|分半)"
HEADER = re.compile(rf"约 {TIME}，(?P<memory>\d+(?:\.\d+)?|[A-Z]+) GB")
QUICK = re.compile(rf"--quick 约 {TIME}")
CELL = re.compile(rf"{TIME}(?:，(?P<memory>\d+(?:\.\d+)?|[A-Z]+) GB)?")
CHANGE = 0.25  # 相差多少才改
SECOND, TENTH = 1, 0.1  # 写的是整数秒和一位小数的 GB：差不到一个单位，多半只是四舍五入
BUSY = 0.5  # 一分钟的平均负载超过它，就有别的程序在用 CPU
QUICK_LIMIT = 20  # --quick 说好 20 秒以内


def run(command, limit):
    """跑一条命令，量时间和内存。

    参数:
        command (list[str]): 命令
        limit (float): 最多几秒，超过就结束它

    返回:
        tuple[float, float, str 或 None]: 秒；最大的一个进程占几 GB（它自己和它开的子进程里）；没有跑成时的原因
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        # 自己一组：超时的时候，连它开的子进程一起结束。
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, start_new_session=True, env=os.environ | {"PYTHONIOENCODING": "utf-8"})
        stopped = threading.Event()

        def stop():
            stopped.set()
            try:
                os.killpg(process.pid, 9)
            except ProcessLookupError:
                pass

        timer = threading.Timer(limit, stop)
        timer.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            stop()  # Ctrl-C：不留下还在跑的脚本
            raise
        finally:
            timer.cancel()
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        memory = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30  # Linux 的单位是 KB，macOS 是字节
        output.seek(0)
        errors.seek(0)
        crosses = re.findall(r"^  ✗ (.+)$", output.read().decode("utf-8", "replace"), flags=re.MULTILINE)
        lines = [line.strip() for line in re.split(r"[\r\n]+", errors.read().decode("utf-8", "replace")) if line.strip()]
    if stopped.is_set():
        return seconds, memory, f"超过 {limit / 60:.0f} 分钟，结束了它"
    if process.returncode:
        return seconds, memory, lines[-1] if lines else f"退出码 {process.returncode}"
    return seconds, memory, f"自查有 ✗：{crosses[0]}" if crosses else None


def say_time(seconds):
    """把秒数写成读者看的样子：两位有效数字，两分钟以上用分钟。

    参数:
        seconds (float): 秒

    返回:
        str: 例如 3 秒、24 秒、3 分半、12 分钟

    示例:
        >>> [say_time(t) for t in (0.2, 2.6, 23.7, 104, 119, 214, 700)]
        ['1 秒', '3 秒', '24 秒', '100 秒', '2 分钟', '3 分半', '12 分钟']
    """
    if seconds < 99.5:
        return f"{max(1, round(seconds))} 秒"
    if seconds < 115:
        return f"{round(seconds, -1):.0f} 秒"
    halves = round(seconds / 30)
    if halves % 2 and seconds < 300:
        return f"{halves // 2} 分半"
    return f"{round(seconds / 60)} 分钟"


def say_memory(memory):
    """把内存写成读者看的样子。

    参数:
        memory (float): GB

    返回:
        str: 例如 0.3、1.2、12，单位 GB
    """
    return f"{memory:.0f}" if memory >= 9.95 else f"{max(0.1, memory):.1f}"


def written_seconds(found):
    """原来写的是多少秒。

    参数:
        found (re.Match): 上面三个正则表达式之一的结果

    返回:
        float 或 None: 秒；还没量过（写的是大写字母）时为 None
    """
    if found["amount"].isupper():
        return None
    return {"秒": 1, "分钟": 60}.get(found["unit"], 60) * float(found["amount"]) + (30 if found["unit"] == "分半" else 0)


def differs(new, old, unit):
    """值得改吗？

    参数:
        new (float): 量出来的
        old (float 或 None): 原来写的
        unit (float): 写到哪一位：1（秒）或 0.1（GB）

    返回:
        bool: 没写过，或相差四分之一以上，并且超过一个 unit
    """
    return old is None or abs(new - old) > max(CHANGE * old, unit)


def updated(pattern, text, seconds, memory=None):
    """改写一处「约 N 秒，N GB」。

    参数:
        pattern (re.Pattern): HEADER、QUICK 或 CELL
        text (str): 那一行或那一格
        seconds (float): 量出来的秒
        memory (float 或 None): 量出来的 GB；None 就不改内存

    返回:
        str: 新的文字；不值得改、没有找到时，与原来相同
    """
    found = pattern.search(text)
    if not found:
        return text
    parts = []
    # 时间和内存各看各的：一个变了，不动另一个。写出来相同（例如都不到 0.1 GB）也不动。
    if differs(seconds, written_seconds(found), SECOND):
        parts.append((found.start("amount"), found.end("unit"), say_time(seconds)))
    if memory is not None and found["memory"] is not None and differs(memory, None if found["memory"].isupper() else float(found["memory"]), TENTH):
        parts.append((*found.span("memory"), say_memory(memory)))
    for start, end, new in reversed(parts):
        text = text[:start] + new + text[end:]
    return text


def new_header(source, seconds, memory, quick):
    """脚本开头的那一行应当怎么写。

    参数:
        source (str): 脚本全文
        seconds, memory (float): 默认参数量出来的
        quick (float 或 None): --quick 的秒数；没有量为 None

    返回:
        tuple[str, str, str]: 新的全文；那一行原来的、现在的（没有那一行时，两个都是空的）
    """
    tree = ast.parse(source)
    end = tree.body[0].end_lineno if ast.get_docstring(tree) is not None else 0
    lines = source.splitlines(keepends=True)
    for number, line in enumerate(lines[:end]):
        if HEADER.search(line) and " 核 CPU" in line:
            new = updated(HEADER, line, seconds, memory)
            if quick is not None:
                new = updated(QUICK, new, quick)
            if new != line:  # 推算的换成量出来的，就不再写「推算」
                new = re.sub(r"（\d+ 核 CPU，[^）]*推算）", "（2 核 CPU）", new, count=1)
            lines[number] = new
            return "".join(lines), line.strip(), new.strip()
    return source, "", ""


def new_readme(text, name, seconds, memory):
    """README 表格里这个脚本的那些行应当怎么写；只看最后一格。

    参数:
        text (str): README 全文
        name (str): 表格里写的路径，例如 main/gpt.py
        seconds, memory (float): 量出来的

    返回:
        tuple[str, list[tuple[str, str]]]: 新的全文；改了的格子，原来的和现在的
    """
    lines, changes = text.splitlines(keepends=True), []
    for number, line in enumerate(lines):
        cells = line.rstrip().rstrip("|").split("|")
        if not line.startswith("|") or f"`{name}`" not in line or "合计" in cells[-1]:  # 「与下一行合计 8 秒」不是它一个的
            continue
        new = updated(CELL, cells[-1], seconds, memory)
        if new != cells[-1]:
            changes.append((cells[-1].strip(), new.strip()))
            lines[number] = line[::-1].replace(cells[-1][::-1], new[::-1], 1)[::-1]  # 从右边找，只换最后一格
    return "".join(lines), changes


def save(path, text):
    """写文件：先写临时文件，再改名，中途断电也不会只剩半个。

    参数:
        path (Path): 文件
        text (str): 内容
    """
    part = path.with_name(path.name + ".part")
    with open(part, "w", encoding="utf-8", newline="") as file:
        file.write(text)
    os.chmod(part, path.stat().st_mode)
    os.replace(part, path)


def read(path):
    """读文件，换行符原样保留。

    参数:
        path (Path): 文件

    返回:
        str: 内容
    """
    with open(path, encoding="utf-8", newline="") as file:
        return file.read()


def measure(script, limit, dry_run):
    """量一个脚本，写进它的开头、本章 README 和总 README。

    参数:
        script (Path): 脚本
        limit (float): 最多几秒
        dry_run (bool): 只打印，不写

    返回:
        bool: 量成了
    """
    name = script.relative_to(ROOT).as_posix()
    source = read(script)
    with tempfile.TemporaryDirectory() as tmp:
        command = [sys.executable, str(script)]
        if '"--out"' in source:
            command += ["--out", tmp]  # 不覆盖训练好的模型
        seconds, memory, problem = run(command, limit)
        if not problem and seconds < 10:  # 短的再跑一遍：第一遍多半在等硬盘
            seconds, memory, problem = run(command, limit)
        quick = None
        if not problem and '"--quick"' in source:
            quick, _, problem = run([*command, "--quick"], limit)
    if problem:
        print(f"✗ {name}　没有量成：{problem}")
        return False
    print(f"{name}　{seconds:.1f} 秒，{memory:.2f} GB" + (f"；--quick {quick:.1f} 秒" if quick is not None else ""), flush=True)
    if quick is not None and quick > QUICK_LIMIT:
        print(f"  注意：--quick 应在 {QUICK_LIMIT} 秒以内")

    source, old, new = new_header(source, seconds, memory, quick)
    if not old:
        print("  注意：开头没有「约 N 秒，N GB（2 核 CPU）」这一行，请补上")
    elif old != new:
        print(f"  开头　　{old}\n  　　　→ {new}")
        if not dry_run:
            save(script, source)
    if re.search(r"(?<![A-Za-z])[A-Z]+ (?:秒|分钟|GB)", new):
        print("  注意：这一行里还有没量的，只量了第一处（默认参数）")
    for readme, path in ((script.parents[1] / "README.md", "/".join(name.split("/")[1:])), (ROOT / "README.md", name)):
        if readme.is_file():
            text, changes = new_readme(read(readme), path, seconds, memory)
            for before, after in changes:
                print(f"  {readme.relative_to(ROOT).as_posix()}　{before} → {after}")
            if changes and not dry_run:
                save(readme, text)
    return True


def main():
    """量命令行里的脚本，没有就量全部。"""
    parser = ChineseParser("量每个脚本的时间和内存，写进它的开头和 README 的表格")
    parser.add_argument("scripts", nargs="*", metavar="脚本", help="只量这几个（默认：各章 main/ 和 experiments/ 的全部）")
    parser.add_argument("--dry-run", action="store_true", help="照样量，但只说会改什么，不写")
    parser.add_argument("--force", action="store_true", help="机器不空闲、不是 2 核也量")
    parser.add_argument("--limit", type=float, default=40, metavar="分钟", help="一个脚本最多跑几分钟（默认：40）")
    args = parser.parse_args()
    if not hasattr(os, "wait4"):
        parser.error("Windows 上量不了内存，请在 Linux 或 macOS 上量")
    if not args.limit > 0:
        parser.error(f"--limit 要大于 0，不能是 {args.limit}")
    scripts = [Path(script).resolve() for script in args.scripts]
    for script in scripts:
        if not script.is_file() or not script.is_relative_to(ROOT):
            parser.error(f"找不到脚本 {script.name}：请写相对于现在这个文件夹的路径，它要在这个项目里")
    scripts = scripts or sorted(path for pattern in ("ch*/main/*.py", "ch*/experiments/*.py", "appendix-A/*/*.py") for path in ROOT.glob(pattern) if path.parent.name != "tests")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = os.getloadavg()[0]
    if not args.force:
        if load > BUSY:
            parser.error(f"机器不空闲（一分钟的平均负载 {load:.1f}，应不超过 {BUSY}）：量出来会偏慢。等一等，或加 --force")
        if cores != 2:
            parser.error(f"能用的是 {cores} 个核，而写的是「2 核 CPU」：Linux 上可以用 taskset -c 0,1 只给它两个，或加 --force")
        folders = [ROOT / "setup" / "downloads", *([Path(os.environ["LLM_DATA_DIR"])] if os.environ.get("LLM_DATA_DIR") else [])]
        if any(any(folder.glob("gpt2-*.safetensors")) for folder in folders):
            parser.error("这台机器上有 GPT-2 的权重，ch05–ch07 的脚本会改用它，而写的是 mini 的时间：先把它移开，或加 --force")
    if not (ROOT / "ch05" / "outputs" / "gpt_mini.pth").is_file() and any(script.relative_to(ROOT).parts[0] in ("ch06", "ch07") for script in scripts):
        parser.error("先运行 python ch05/main/gpt_train.py：没有它，ch06、ch07 的脚本不运行")
    try:
        done = [measure(script, args.limit * 60, args.dry_run) for script in scripts]
    except KeyboardInterrupt:
        print("\n停下了；量完的已经写好")
        sys.exit(130)
    print(f"\n量了 {len(done)} 个脚本，{done.count(False)} 个没有量成" + ("；--dry-run，什么也没写" if args.dry_run else ""))
    sys.exit(1 if False in done else 0)


if __name__ == "__main__":
    main()
