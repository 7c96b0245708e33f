"""边读边看：书的次序，谁用了谁，哪些组件能练

运行：由 render.py 调用
"""

import re
import sys
from functools import cache
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "practice_engine")]
import copy_forward

ROOT = copy_forward.ROOT
CHAPTERS = {
    "ch02": "第 2 章　处理文本数据", "ch03": "第 3 章　注意力机制", "ch04": "第 4 章　从零搭出 GPT", "ch05": "第 5 章　预训练",
    "ch06": "第 6 章　分类微调", "ch07": "第 7 章　指令微调", "appendix-A": "附录 A　PyTorch 入门",
}  # fmt: skip


def book_order():
    """所有章节脚本，按读的次序：逐步讲解、总结、练习、实验（照 README 里提到的次序）。

    返回:
        list[str]: 相对项目根目录
    """
    found = []
    for chapter in CHAPTERS:
        readme = ROOT / chapter / "README.md"
        text = readme.read_text(encoding="utf-8") if readme.is_file() else ""

        def key(path, text=text):
            stem = path.stem
            rank = 0 if stem.startswith("example_") else 2 if stem.startswith("exercise_") else 3 if path.parent.name == "experiments" else 1
            at = text.find(path.name)
            return rank, (at if at >= 0 else 10**9) if rank in (1, 3) else 0, path.name

        paths = [*(ROOT / chapter / "main").glob("*.py"), *(ROOT / chapter / "experiments").glob("*.py")]
        found += [path.relative_to(ROOT).as_posix() for path in sorted(paths, key=key)]
    return found


@cache
def users():
    """谁用了哪个组件。

    返回:
        dict: （原处，名字）→ 一串（沿用还是改写，脚本）
    """
    found = {}
    for path in copy_forward.scripts():
        try:
            areas = copy_forward.regions(path)
        except (ValueError, UnicodeDecodeError):
            continue
        for kind, source, names, *_ in areas:
            for name in names:
                try:
                    home = copy_forward.home(source, name)
                except (ValueError, OSError):
                    continue
                found.setdefault((home, name), []).append((kind[:2], path.relative_to(ROOT).as_posix()))
    return found


@cache
def practice():
    """能手敲练习的组件。

    返回:
        dict: （原处，名字）→ 练习的名字
    """
    import cutting  # 只读源代码，不导入 PyTorch

    found = {}
    try:
        components = list(cutting.components().values())
    except ValueError:  # 题目正在改、读不进来：页面上先不写怎样练
        return found
    for component in components:
        try:
            for part in component.parts:
                found.setdefault((component.source, part), component.name)
        except (ValueError, OSError):
            continue
    return found


def progress_rows(text):
    """README 里「学习进度」那张表的各行。

    参数:
        text (str): README 的内容

    返回:
        list[str]: 表的每一行
    """
    part = text.partition("## 学习进度")[2].partition("\n## ")[0]
    return [line for line in part.splitlines() if line.startswith("|")]


def github(words, used):
    """标题的锚点，与 GitHub 的写法相同，文档里原来的链接才不用改。

    参数:
        words (str): 标题
        used (set[str]): 已经用掉的，新的会加进去

    返回:
        str: 锚点

    示例:
        >>> github("第 1 章学习笔记：理解 LLM", set())
        '第-1-章学习笔记理解-llm'
    """
    base = re.sub(r"[^\w -]", "", words.lower()).replace(" ", "-") or "section"
    name = next(name for name in [base, *(f"{base}-{number}" for number in range(1, 99))] if name not in used)
    used.add(name)
    return name
