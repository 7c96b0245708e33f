"""练习的记录：只追加的 JSON 行文件；什么时候该复习，由 fsrs 从这份记录推算出来

记录是唯一的真相：进度、复习日程都从头推算，没有第二份会对不上的状态。
"""

import contextlib
import hashlib
import json
import os
from datetime import datetime, timezone

import cutting

VERSION = 1
FOLDER = cutting.HOME / "practice_log" if os.environ.get("LLM_PRACTICE_DIR") else cutting.ROOT / "setup" / "practice_log"


def digest(text):
    """一份代码的指纹，用来认出"检查过之后有没有再改"。

    参数:
        text (str): 代码

    返回:
        str: 16 个十六进制数字
    """
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def append(event, name, **details):
    """在记录末尾加一行。

    一次 write 写完整一行，又是 O_APPEND：两个检查同时结束，两行也不会掺在一起；断电最多留下半行，读的时候会跳过。

    参数:
        event (str): 发生了什么，如 check
        name (str): 组件
        details: 其余要记的事

    返回:
        dict: 写下的那一行
    """
    entry = {"version": VERSION, "time": datetime.now(timezone.utc).isoformat(timespec="seconds"), "event": event, "name": name, **details}
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / "log.jsonl"
    line = json.dumps(entry, ensure_ascii=False).encode("utf-8") + b"\n"
    with contextlib.suppress(OSError), open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            line = b"\n" + line  # 上一行是断电留下的半行：另起一行，别接在它后面
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o644)
    try:
        os.write(handle, line)
        os.fsync(handle)
    finally:
        os.close(handle)
    return entry


def read():
    """读出全部记录，读不懂的行跳过。

    返回:
        list[dict]: 按时间先后
    """
    path = FOLDER / "log.jsonl"
    if not path.is_file():
        return []
    entries = []
    for line in path.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            entry = json.loads(line)
            entry["when"] = datetime.fromisoformat(entry["time"])
            if entry["version"] <= VERSION and isinstance(entry["name"], str) and isinstance(entry["event"], str) and entry["when"].tzinfo:
                entries.append(entry)
    return entries


def status(entries):
    """每个组件现在怎样了。

    参数:
        entries (list[dict]): 记录

    返回:
        dict[str, dict]: 名字到 started、level、best（通过的最高级别）、passes、tries、fails 与 hints（这一回的）、seconds、passed_digest
    """
    found = {}
    for entry in entries:
        one = found.setdefault(entry["name"], {"started": None, "level": 0, "best": 0, "passes": [], "tries": 0, "fails": 0, "hints": 0, "looked": False, "passed": False, "minutes": 0.0, "last": None})
        if one["last"] is not None:
            gap = (entry["when"] - one["last"]).total_seconds() / 60
            one["minutes"] += gap if 0 < gap <= 30 else 0  # 隔了半小时以上，是去做别的事了
        one["last"] = entry["when"]
        event = entry["event"]
        if event in ("start", "reset"):
            one.update(started=entry["when"], level=entry.get("level", 1), fails=0, hints=0, looked=False, passed=False)
        elif event == "hint":
            one["hints"] += 1
        elif event == "diff":
            one["looked"] = True
        elif event == "check":
            one["tries"] += 1
            if entry.get("ok"):
                one["best"] = max(one["best"], entry.get("level", 1))
                if not one["passed"]:
                    one["passes"].append(entry)  # 一回练习只算一次：通过之后再点几下检查，不算又复习了
                one["passed"] = True
            else:
                one["fails"] += 1
    return found


def grade(level, minutes, fails, hints, looked):
    """这一回练得怎样：1 忘了，2 吃力，3 记得，4 很熟（fsrs 的四档）。

    参数:
        level (int): 第几级
        minutes (float): 从开始到通过用了多久
        fails (int): 没通过的检查有几次
        hints (int): 要了几条提示
        looked (bool): 看过标准答案

    返回:
        int: 1 到 4
    """
    if looked:
        return 1
    trouble = (fails >= 3) + (fails >= 8) + (hints >= 1) + (hints >= 4) + (minutes > 45)
    if level == 1 or trouble >= 2:
        return 2
    return 4 if level >= 3 and trouble == 0 and fails == 0 and minutes <= 15 else 3


def schedule(entries):
    """由记录推算每个组件下一次该什么时候复习。

    参数:
        entries (list[dict]): 记录

    返回:
        dict[str, dict]: 名字到 due（datetime）和 recall（现在还记得的概率）

    异常:
        ImportError: 没有装 fsrs
    """
    from fsrs import Card, Rating, Scheduler

    # 不要"一分钟后、十分钟后"的步骤：一个组件要敲十几分钟，最短也该隔一天。不加随机，结果才能从记录重新推出来。
    scheduler = Scheduler(learning_steps=(), relearning_steps=(), enable_fuzzing=False)
    found, now = {}, datetime.now(timezone.utc)
    for name, one in status(entries).items():
        card = Card(card_id=1)
        for entry in one["passes"]:
            card, _ = scheduler.review_card(card, Rating(entry.get("grade", 3)), entry["when"].astimezone(timezone.utc))
        if one["passes"]:
            found[name] = {"due": card.due, "recall": scheduler.get_card_retrievability(card, now)}
    return found
