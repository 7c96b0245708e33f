"""把脚本里写的「动手改」真的改一遍，看结果是不是说的那样

「动手改」是对读者的承诺：照着改，就会看到什么。代码一变，承诺可能就不成立了。这里把每一条记成数据（edits.json）：
改哪段文字、带什么参数、输出里应当（不应当）有什么；在一份副本上改了运行，原来的脚本不动。
每一条还记着试的时候脚本的摘要：脚本后来改过，就要重试，不重试会被点名。

运行：
    python setup/checks/edits.py                                    # 只查记录：哪些没有记，哪些试过之后脚本又改了
    python setup/checks/edits.py ch04/experiments/exp_moe.py        # 试这个脚本的
    python setup/checks/edits.py --all                              # 全部，要大半个小时；试成的记下摘要
    约 1 秒，0.1 GB（2 核 CPU）
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from chinese_cli import ChineseParser

ROOT = Path(__file__).resolve().parents[2]
RECORDS = Path(__file__).with_name("edits.json")
CHAPTERS = ["ch02", "ch03", "ch04"]  # 记录齐了的章
REGION = re.compile(r"^# region 沿用.*?^# endregion\n", re.MULTILINE | re.DOTALL)
TIME = re.compile(r"^ +约 .* 核 CPU）.*\n", re.MULTILINE)  # 「约 3 秒，0.3 GB（2 核 CPU）」
LIMIT = 300  # 一条最多几秒


def promised(source):
    """一个脚本里「动手改」有几条。

    参数:
        source (str): 脚本的文本

    返回:
        list[int]: 编号，如 [1, 2, 3]；没有「动手改」时为空
    """
    found = re.search(r"^(?:# %% )?动手改(.*?)(?=^\S*运行|^形状记号|^# %%|^\"\"\"|\Z)", source, re.MULTILINE | re.DOTALL)
    return [int(number) for number in re.findall(r"(?:^#?\s*|：)(\d)\. ", found[1], re.MULTILINE)] if found else []


def digest(source):
    """脚本的摘要；沿用区不算：别处改了组件，不必重试；重新量过的用时也不算。

    参数:
        source (str): 脚本的文本

    返回:
        str: 12 位十六进制
    """
    return hashlib.sha256(TIME.sub("", REGION.sub("", source)).encode()).hexdigest()[:12]


def edited(source, replace):
    """把「动手改」改上去。

    参数:
        source (str): 脚本的文本
        replace (list): 每项是（原来的，换成的）

    返回:
        str: 改过的文本

    异常:
        ValueError: 有一段原来的文字不是正好出现一次
    """
    for old, new in replace:
        if source.count(old) != 1:
            raise ValueError(f"要改的文字出现了 {source.count(old)} 次，应当正好一次：{old!r}")
        source = source.replace(old, new)
    return source


def attempt(entry):
    """在副本上改了运行，看结果。

    参数:
        entry (dict): edits.json 里的一条

    返回:
        str: 哪里与说的不一样；都一样时为空
    """
    script = ROOT / entry["script"]
    try:
        text = edited(script.read_text(encoding="utf-8"), entry["replace"])
    except ValueError as error:
        return str(error)
    with tempfile.TemporaryDirectory() as folder:
        # 副本放在同样的位置，数据、权重用链接：脚本照样找得到，写的图片留在副本旁边。
        copy = Path(folder) / entry["script"]
        copy.parent.mkdir(parents=True)
        copy.write_text(text, encoding="utf-8")
        (Path(folder) / "setup").mkdir()
        for name in ("setup/data", "setup/downloads", "ch05/outputs"):
            target = Path(folder) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).exists():
                target.symlink_to(ROOT / name, target_is_directory=True)
        env = {key: value for key, value in os.environ.items() if key != "LLM_DATA_DIR"} | {"PYTHONUTF8": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
        try:
            done = subprocess.run([sys.executable, copy, *entry["args"]], cwd=folder, env=env, capture_output=True, encoding="utf-8", timeout=LIMIT)
        except subprocess.TimeoutExpired:
            return f"{LIMIT} 秒还没有跑完"
    output = done.stdout + done.stderr
    if done.returncode != entry["code"]:
        return f"退出码是 {done.returncode}，应是 {entry['code']}：{output.strip().splitlines()[-1:]}"
    for pattern in entry["sees"]:
        if not re.search(pattern, output):
            return f"没有看到 {pattern!r}"
    for pattern in entry["not"]:
        if re.search(pattern, output):
            return f"不该看到 {pattern!r}"
    return ""


def survey(entries):
    """只查记录：每一条「动手改」都记了吗，试过之后脚本改了吗。

    参数:
        entries (list[dict]): edits.json

    返回:
        list[str]: 每个问题一句
    """
    problems = []
    for path in sorted(path for chapter in CHAPTERS for path in (ROOT / chapter).glob("*/*.py") if path.parent.name in ("main", "experiments")):
        name, source = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        mine = [entry for entry in entries if entry["script"] == name]
        for number in sorted(set(promised(source)) - {entry["number"] for entry in mine}):
            problems.append(f"{name}　动手改 {number} 没有记录")
        for number in sorted({entry["number"] for entry in mine} - set(promised(source))):
            problems.append(f"{name}　记录了动手改 {number}，脚本里没有")
        stale = sorted({entry["number"] for entry in mine if entry.get("tried") != digest(source)})
        if stale:
            problems.append(f"{name}　动手改 {'、'.join(map(str, stale))} 试过之后，脚本又改了")
    return problems


def main():
    """查记录，或真的试。"""
    parser = ChineseParser("把「动手改」真的改一遍，看结果是不是说的那样")
    parser.add_argument("scripts", nargs="*", help="只试这些脚本的；不写、也没有 --all，就只查记录")
    parser.add_argument("--all", action="store_true", help="试全部")
    parser.add_argument("--changed", action="store_true", help="只试脚本改过的")
    parser.add_argument("--no-slow", action="store_true", help="不试要用默认大小运行的")
    parser.add_argument("--workers", type=int, default=1, help="几个并排（默认：1）")
    args = parser.parse_args()
    entries = json.loads(RECORDS.read_text(encoding="utf-8"))
    names = {Path(script).resolve().relative_to(ROOT).as_posix() if Path(script).exists() else script for script in args.scripts}
    for name in names:
        if not any(entry["script"] == name for entry in entries):
            parser.error(f"没有 {name} 的记录")
    if not (names or args.all or args.changed):
        problems = survey(entries)
        print("\n".join(problems) or f"{len(entries)} 条「动手改」都记着，都试过")
        sys.exit(1 if problems else 0)

    def wanted(entry):
        """这一条要不要试。"""
        if args.no_slow and entry.get("slow"):
            return False
        if names and entry["script"] not in names:
            return False
        return not args.changed or entry.get("tried") != digest((ROOT / entry["script"]).read_text(encoding="utf-8"))

    todo = [entry for entry in entries if wanted(entry)]
    failed = 0
    with ThreadPoolExecutor(max(1, args.workers)) as pool:
        for entry, problem in zip(todo, pool.map(attempt, todo)):
            failed += bool(problem)
            print(f"{'✗' if problem else '✓'} {entry['script']}　动手改 {entry['number']}　{problem}", flush=True)
            if not problem:
                entry["tried"] = digest((ROOT / entry["script"]).read_text(encoding="utf-8"))
                write(entries)  # 试成一条记一条：中途停下，下次接着试
    print(f"{len(todo)} 条，{failed} 条与说的不一样")
    sys.exit(1 if failed else 0)


def write(entries):
    """写回 edits.json：一条一行，按脚本和编号排好，改动看得清。

    参数:
        entries (list[dict]): 全部的记录
    """
    entries = sorted(entries, key=lambda entry: (entry["script"], entry["number"], entry["args"]))
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    part = RECORDS.with_suffix(".part")
    part.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    os.replace(part, RECORDS)


if __name__ == "__main__":
    main()
