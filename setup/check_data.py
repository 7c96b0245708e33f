"""数据文件能不能用：编码、格式、缺的、空的、重的、太长的，一次列全；能转换的，转换成脚本认的样子

章节脚本遇到坏文件，说出第一个问题就停；全部问题在这里看，说到第几行、第几条。查四种文件（--for，不写就看内容猜）：
    text          一篇文章，给 ch05/main/gpt_train.py --text
    messages      短信，每行「ham 或 spam<制表符>正文」，给 ch06/main/gpt_class_finetune.py --data
    instructions  指令，JSON 列表，每条有 instruction、input、output，给 ch07/main/gpt_instruction_finetuning.py --data
    preferences   偏好，JSON 列表，每条有 instruction、input、chosen、rejected

运行：
    python setup/check_data.py setup/data/messages.tsv
    python setup/check_data.py spam.csv --convert 短信.tsv               # Kaggle 的 spam.csv 也能转换
    python setup/check_data.py chat.jsonl --convert 指令.json            # conversations、messages 的聊天记录也能转换
    python setup/check_data.py 我的指令.json --context 1024              # 要微调的是 GPT-2；mini 的上下文长度是 256
    约 3 秒，0.2 GB（2 核 CPU）；词元数的图写到 setup/outputs/

退出码：0 能用（也许有提醒），2 不能用。文件本身一个字也不改，转换的结果写在另一个文件里。
"""

import csv
import io
import json
import os
import re
import sys
from collections import Counter, defaultdict
from math import ceil
from pathlib import Path

import numpy as np
import tiktoken

sys.path.insert(0, str(Path(__file__).resolve().parent))
from chinese_cli import ChineseParser
from find_data import find_data

KINDS = {"text": "文章", "messages": "短信", "instructions": "指令", "preferences": "偏好"}
OUTPUTS = Path(__file__).resolve().parent / "outputs"
LIMITS = {"mini": 256, "GPT-2": 1024}  # 上下文长度
# 问题分四类：能改，脚本不认，--convert 能改好；去掉，--convert 只能去掉这一条；不行，整个文件用不了；提醒，能用。
FIX, DROP, STOP, NOTE = "能改", "去掉", "不行", "提醒"
MAGIC = {b"PK\x03\x04": "压缩包或 Excel 表格", b"\x1f\x8b": "gzip 压缩包", b"%PDF": "PDF", b"PAR1": "Parquet 表格", b"\xd0\xcf\x11\xe0": "旧版 Excel 表格"}
NAMES = {"utf-16": "UTF-16（记事本的「Unicode」）", "utf-32": "UTF-32", "gb18030": "GB18030（中文 Windows 的默认编码，GBK 是它的一部分）"}
NAMES |= {"big5": "Big5（繁体中文的旧编码）", "cp1252": "latin-1（西文 Windows 的旧编码，cp1252）", "latin-1": "latin-1"}
LABELS = {"ham": "ham", "0": "ham", "正常": "ham", "spam": "spam", "1": "spam", "垃圾": "spam"}
LABEL_COLUMNS, TEXT_COLUMNS = {"v1", "label", "category", "class", "target", "标签"}, {"v2", "text", "message", "sms", "content", "正文"}
# 别处的数据怎样称呼这几段；次序就是先找哪一个。
ALIASES = {
    "instruction": ("instruction", "prompt", "question", "query"),
    "input": ("input", "context"),
    "output": ("output", "response", "answer", "completion"),
}
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "bot": "assistant"}
# 原书的短信里就有一条吞掉了后面两行；书上的 5,572 条是这样数出来的，所以它不算问题。
BOOK_QUOTE = "Keep ur problems in ur heart"


# region 沿用 ch06/main: create_balanced_dataset, random_split
def create_balanced_dataset(rows):
    """让两类一样多：多的那一类只留一部分，少的那一类全要。（详解见 ch06/main/example_01_data.py）"""
    ham = [row for row in rows if row[0] == "ham"]
    spam = [row for row in rows if row[0] == "spam"]
    if not ham or not spam:
        raise ValueError(f"数据里有 {len(ham)} 条 ham、{len(spam)} 条 spam，两类都要有才能学着分辨")
    n = min(len(ham), len(spam))
    shuffled = np.random.RandomState(123).permutation(len(ham))
    return [ham[i] for i in shuffled[:n]] + spam[:n]


def random_split(rows, train_frac, validation_frac):
    """打乱，再切成训练集、验证集、测试集。（详解见 ch06/main/example_01_data.py）"""
    rows = [rows[i] for i in np.random.RandomState(123).permutation(len(rows))]
    train_end = int(len(rows) * train_frac)
    validation_end = train_end + int(len(rows) * validation_frac)
    return rows[:train_end], rows[train_end:validation_end], rows[validation_end:]


# endregion


# region 沿用 ch07/main: format_input
def format_input(entry):
    """一条数据 → Alpaca 格式的提示词，到回答之前为止。（详解见 ch07/main/example_01_dataset_and_prompt.py）"""
    instruction_text = (
        f"Below is an instruction that describes a task. "
        f"Write a response that appropriately completes the request."
        f"\n\n### Instruction:\n{entry['instruction']}"
    )
    input_text = f"\n\n### Input:\n{entry['input']}" if entry["input"] else ""
    return instruction_text + input_text


# endregion


def decode(data):
    """字节 → 文字；不是 UTF-8，就说第一处在哪里、多半是什么编码，再照那个编码读。

    参数:
        data (bytes): 文件的内容

    返回:
        tuple[str, list]: 文字，换行一律是 \\n；问题，每个是（哪一类，是什么，在哪里）

    异常:
        ValueError: 不是文本
    """
    for magic, name in MAGIC.items():
        if data.startswith(magic):
            raise ValueError(f"这是{name}，不是文本：先解压，或在表格软件里另存为 UTF-8 的 CSV")
    head, issues = data[:4096], []
    guess = "utf-32" if data.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")) else "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else None
    if guess is None and head.count(0) > len(head) / 5:  # 没有 BOM 的 UTF-16：英文的每个字母旁边都有一个 0
        guess = "utf-16-le" if head[1::2].count(0) > head[::2].count(0) else "utf-16-be"
    try:
        start, text = data.find(0), data.decode(guess or "utf-8")
    except UnicodeDecodeError as error:
        start, text = error.start, data.decode("utf-8", "replace")
        wrong, right = text.count("\ufffd"), sum(letter > "\x7f" and letter != "\ufffd" for letter in text)
        if guess:
            issues.append((STOP, f"开头像 {NAMES.get(guess, NAMES['utf-16'])}，后面却坏了", place(data, start)))
        elif right > 4 * wrong:  # 多数非英文的字都读得对，那它就是 UTF-8，只是坏了几处；猜别的编码，好的也会读坏
            issues.append((STOP, f"坏了 {wrong} 处字节，猜不出原来是什么字", place(data, start)))
        else:
            body = data.removeprefix(b"\xef\xbb\xbf")  # 开头的 BOM 说它是 UTF-8，其实不是
            guess = next(name for name in ("gb18030", "big5", "cp1252", "latin-1") if plausible(body, name))
            text = body.decode(guess)
    if guess and not issues:
        issues.append((FIX, f"不是 UTF-8；多半是 {NAMES.get(guess, NAMES['utf-16'])}", place(data, 0 if guess[:3] == "utf" and data[0] > 0x7F else start)))
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    if "\n" in text and "\r" in text:  # 整个文件都用 \r 换行的，是老式的 Mac 文件，不要紧；混着用，第 6 章写 CSV 时会断错行
        issues.append((FIX, f"换行混着用，有 {text.count(chr(13))} 个单独的回车（0x0D）", f"第 {text[: text.index(chr(13))].count(chr(10)) + 1} 行"))
    text = text.replace("\r", "\n")
    if "\0" in text:
        issues.append((FIX, f"有 {text.count(chr(0))} 个 NUL 字符（0x00）", f"第 {text[: text.index(chr(0))].count(chr(10)) + 1} 行"))
    return text.replace("\0", ""), issues


def place(data, start):
    """第一处读不了的字节在哪里。

    参数:
        data (bytes): 文件的内容
        start (int): 从 0 数，第几个字节

    返回:
        str: 第几行、那一行的第几个字节、是多少
    """
    return f"第 {data.count(10, 0, start) + 1} 行第 {start - data.rfind(10, 0, start)} 个字节是 0x{data[start]:02X}"


def plausible(data, encoding):
    """照这个编码读，读出来的像不像：中文编码看九成的字是不是常用字，西文编码能读就行。

    参数:
        data (bytes): 文件的内容
        encoding (str): 编码的名字

    返回:
        bool: 像
    """
    try:
        letters = [letter for letter in data.decode(encoding) if letter > "\x7f"]
    except UnicodeDecodeError:
        return False
    common = {"gb18030": lambda letter: letter < "\u0250" or letter in "‘’“”…—€" or letter.encode("gb2312", "ignore"), "big5": lambda letter: "\u3000" <= letter <= "\u9fff" or letter > "\uff00"}
    return encoding not in common or sum(bool(common[encoding](letter)) for letter in letters) > 0.9 * len(letters)


def read_messages(text):
    """读短信：制表符或逗号分开的表，或 JSON；一条一条地查。

    参数:
        text (str): 文件的内容

    返回:
        tuple[list, list]: 能用的，每条是（标签，正文，第几行）；问题
    """
    if text.lstrip()[:1] in ("[", "{"):
        entries, issues = read_json(text)
        issues.append((FIX, "是 JSON，不是「ham 或 spam<制表符>正文」", entries[0][0] if entries else ""))
        keyed = [(where, {str(key).lower(): value for key, value in entry.items()} if isinstance(entry, dict) else {}) for where, entry in entries]
        table = [(where, [str(next((row[key] for key in row if key in names), "")) for names in (LABEL_COLUMNS, TEXT_COLUMNS)]) for where, row in keyed]
        return sort_messages(table, "\t", issues)
    first = text.lstrip("\n").split("\n")[0]
    delimiter = re.match(r"\W?\w*\W??([\t,;])", first)  # 第一栏后面的那个
    delimiter = delimiter[1] if delimiter else "\t"
    lines, table, issues, end = text.split("\n"), [], [], 0
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    limit = csv.field_size_limit(sys.maxsize)  # 引号没有配对时，一栏会很长
    try:
        records = [(cells, reader.line_num) for cells in reader]
    finally:
        csv.field_size_limit(limit)  # 这个上限是全局的，用完放回去
    for cells, last in records:
        start, end = end + 1, last
        swallowed = any(re.search(r"\n[^\n\t]*\t" if delimiter == "\t" else rf"(?i)\n(ham|spam|0|1){delimiter}", cell) for cell in cells)
        if swallowed and len(cells) > 1 and cells[1].startswith(BOOK_QUOTE):
            issues.append((NOTE, "引号没有配对，吞掉了后面两行；原书的数据就是这样，照旧", f"第 {start} 行"))
        elif swallowed:
            issues.append((FIX, f"引号没有配对，吞掉了后面 {end - start} 行", f"第 {start} 行的引号吞掉了第 {start + 1}–{end} 行"))
            cells = None
            kept = {number: lines[number - 1].rstrip(",;") if delimiter != "\t" else lines[number - 1] for number in range(start, end + 1)}
            table += [(f"第 {number} 行", list(line.partition(delimiter)[::2])) for number, line in kept.items() if line]
        if cells:
            table.append((f"第 {start} 行", cells))
    if delimiter != "\t" and table:
        issues.append((FIX, f"是「{delimiter}」分开的表，不是制表符", table[0][0]))
    names = [cell.strip().lower() for cell in table[0][1]] if table else []
    if set(names) & LABEL_COLUMNS and set(names) & TEXT_COLUMNS:
        issues.append((FIX, "第一行是列名，不是短信", table[0][0]))
        order = [next(i for i, name in enumerate(names) if name in wanted) for wanted in (LABEL_COLUMNS, TEXT_COLUMNS)]
        if unused := [name for i, name in enumerate(names) if name and i not in order]:
            issues.append((NOTE, f"没有用到的栏：{'、'.join(unused)}", ""))
        # 没有名字的栏，是正文里的逗号切出来的（Kaggle 的 spam.csv 就有），留给下面接回去。
        table = [(where, [*((cells + [""] * 9)[i] for i in order), *(cell for i, cell in enumerate(cells) if not "".join(names[i : i + 1]))]) for where, cells in table[1:]]
    return sort_messages(table, delimiter, issues)


def sort_messages(table, delimiter, issues):
    """表里的每一行：标签认得吗，正文有没有，栏数对不对；最后看够不够训练。

    参数:
        table (list): 每行是（第几行，各栏）
        delimiter (str): 各栏用什么分开，多出来的栏照它接回去
        issues (list): 已有的问题，往后加

    返回:
        tuple[list, list]: 能用的，每条是（标签，正文，第几行）；问题
    """
    rows = []
    for where, cells in table:
        label, extra = LABELS.get(cells[0].strip(' "').lower()), [cell for cell in cells[2:] if cell]
        if len(cells) < 2 or label is None:
            issues.append((DROP, "没有标签，或标签不认识", f"{where}是 {delimiter.join(cells)[:30]!r}"))
        elif not "".join(cells[1:]).strip():
            issues.append((DROP, "正文是空的", where))
        else:
            if cells[0] != label:
                issues.append((FIX, "标签不是小写的 ham、spam", f"{where}是 {cells[0]!r}，当作 {label}"))
            if len(cells) > 2 and (extra or delimiter == "\t"):
                issues.append((FIX, "正文里有分隔符，切成了几栏（转换时接回去）", where))
            rows.append((label, (" " if delimiter == "\t" else delimiter).join([cells[1], *extra]), where))
    ham = sum(label == "ham" for label, *_ in rows)
    if min(ham, len(rows) - ham) < 6:  # 平衡之后的 12 条，七成是 8 条，正好凑得出一批
        issues.append((STOP, f"能用的只有 {ham} 条 ham、{len(rows) - ham} 条 spam，每类至少 6 条，才凑得出一批训练数据", ""))
    return rows, issues


def read_json(text):
    """读 JSON，或一行一条的 JSONL，或包在一层字典里的列表。

    参数:
        text (str): 文件的内容

    返回:
        tuple[list, list]: 每条是（第几条，内容）；问题
    """
    try:
        data = json.loads(text)
    except RecursionError:
        return [], [(STOP, "括号套得太深，不像数据", "")]
    except ValueError as error:
        entries, issues = [], [(FIX, "是一行一条的 JSONL，不是一个列表", "第 1 行")]
        for number, line in enumerate(text.split("\n"), start=1):
            try:
                entries += [(f"第 {number} 行", json.loads(line))] if line.strip() else []
            except (ValueError, RecursionError):
                if not entries:  # 第一行就不是，那它不是 JSONL，是写坏了的 JSON
                    hint = "多半是少了逗号、多了逗号，或引号不是英文的双引号" if text.rstrip()[-1:] in ("]", "}") else "文件没有写完"
                    hint = hint if text.lstrip()[:1] in ("[", "{") else "开头不是 [ 或 {"
                    return [], [(STOP, f"不是 JSON：{hint}", f"第 {getattr(error, 'lineno', 1)} 行第 {getattr(error, 'colno', 1)} 个字符")]
                issues.append((DROP, "这一行不是 JSON", f"第 {number} 行"))
        return entries, issues
    if isinstance(data, dict):
        lists = [key for key, value in data.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
        lists = [key for key in lists if key not in ("messages", "conversations")]
        issues = [(FIX, f"列表包在 {lists[0]!r} 里面" if lists else "不是列表，只有一条", "")]
        data = data[lists[0]] if lists else [data]
    else:
        issues = []
    if not isinstance(data, list) or not data:
        return [], [(STOP, "里面应是一个列表，至少一条", "")]
    return [(f"第 {number} 条", entry) for number, entry in enumerate(data, start=1)], issues


def speech(content):
    """一段话：文字，或 OpenAI 式的 [{"type": "text", "text": …}]，或一串来回里的最后一句。

    参数:
        content (object): JSON 里的值

    返回:
        object: 认得的，是文字；不认得的，原样
    """
    if isinstance(content, list) and content and all(isinstance(part, dict) for part in content):
        words = [part.get("text", part.get("content", part.get("value"))) for part in content]
        words = words[-1:] if any("role" in part or "from" in part for part in content) else words
        return "".join(words) if all(isinstance(word, str) for word in words) else content
    return content if isinstance(content, (str, list, dict)) or content is None else str(content)


def read_entries(text, kind, context):
    """读指令或偏好数据，一条一条地查。

    参数:
        text (str): 文件的内容
        kind (str): instructions 或 preferences
        context (int): 上下文长度

    返回:
        tuple[list, list]: 能用的，每条是（提示词的词元数，字典，第几条）；问题
    """
    wanted = ("output",) if kind == "instructions" else ("chosen", "rejected")
    found, issues = read_json(text)
    rows, encode = [], tiktoken.get_encoding("gpt2").encode
    for where, raw in found:
        if not isinstance(raw, dict):
            issues.append((DROP, "不是字典", where))
            continue
        if (entry := chat(raw, where, wanted, issues)) is None:
            continue
        for key in ("instruction", "input", *wanted):
            value = speech(entry.get(key))
            if key == "input" and value is None:
                issues.append((FIX, "没有 input（转换时补成空的）", where))
                value = ""
            if not isinstance(value, str):
                issues.append((DROP, f"没有 {key}，或它不是文字", where))
                break
            if key in entry and not isinstance(entry[key], (str, type(None))):
                issues.append((FIX, f"{key} 不是文字（转换时改成文字）", where))
            entry[key] = value.removesuffix("<|endoftext|>").rstrip() if value.endswith("<|endoftext|>") else value
            if entry[key] != value:
                issues.append((FIX, f"{key} 的末尾写着 <|endoftext|>，凑批时会自动加", where))
            if "<|endoftext|>" in entry[key]:
                issues.append((DROP, f"{key} 的中间有 <|endoftext|>，会把一条切成两条", where))
                break
        else:
            whole = json.dumps(entry, ensure_ascii=False)
            if re.search("[\ud800-\udfff]", whole):
                half = re.search("[\ud800-\udfff]", whole)[0]
                issues.append((FIX, "有半个表情符号（孤立的代理项），写不进文件（转换时换成 \ufffd）", f"{where}的 \\u{ord(half):x}"))
                entry = json.loads(re.sub("[\ud800-\udfff]", "\ufffd", whole))
            prompt = len(encode(format_input(entry) + "\n\n### Response:\n", disallowed_special=()))
            if not entry["instruction"].strip():
                issues.append((DROP, "instruction 是空的", where))
            elif prompt > context:
                issues.append((DROP, f"提示词就占满了上下文（{context} 个词元），回答全被截掉", f"{where}的提示词有 {prompt} 个词元"))
            else:
                if empty := [key for key in wanted if not entry[key].strip()]:
                    issues.append((NOTE, f"{empty[0]} 是空的，学到的是不回答", where))
                rows.append((prompt, entry, where))
    if rows and not any(entry[wanted[0]].strip() for _, entry, _ in rows):
        issues.append((STOP, f"每一条的 {wanted[0]} 都是空的", ""))
    if len(rows) < 10 and STOP not in [mark for mark, *_ in issues]:
        issues.append((STOP, f"能用的只有 {len(rows)} 条，切成三份至少要 10 条", ""))
    return rows, issues


def chat(raw, where, wanted, issues):
    """把聊天记录、别的字段名，变成 instruction、input、output 的样子；本来就是的，原样。

    参数:
        raw (dict): 文件里的一条
        where (str): 第几条
        wanted (tuple): 回答的字段：output，或 chosen 和 rejected
        issues (list): 问题，往后加

    返回:
        dict 或 None: 变好的一条，还没有查过；变不了的，是 None
    """
    turns = next((raw[key] for key in ("conversations", "messages", "conversation") if isinstance(raw.get(key), list)), None)
    if turns is None:
        entry = dict(raw)
        for key in ("instruction", "input", *(key for key in wanted if key == "output")):
            name = next((name for name in ALIASES[key] if raw.get(name) is not None), key)
            if name != key:
                issues.append((FIX, f"{key} 写成了 {name}", where))
                entry[key] = entry.pop(name)
        if isinstance(raw.get(wanted[0]), list) and "instruction" not in entry:  # 偏好数据常把问题写在来回的第一句
            entry["instruction"] = speech(raw[wanted[0]][:1])
        return entry
    turns = [turn for turn in turns if isinstance(turn, dict)]
    said = [(turn.get("role") or turn.get("from"), speech(turn.get("content", turn.get("value")))) for turn in turns]
    system = [words for role, words in said if role == "system" and isinstance(words, str) and words.strip()]
    said = [(ROLES.get(role), words) for role, words in said if ROLES.get(role)]
    start = next((i for i in range(len(said) - 1) if (said[i][0], said[i + 1][0]) == ("user", "assistant")), None)
    if start is None:
        issues.append((DROP, "聊天记录里没有一问一答", where))
        return None
    issues.append((FIX, "是聊天记录（conversations、messages），要变成 instruction、input、output", where))
    if rest := len(said) - start - 2:
        issues.append((NOTE, "只取第一问第一答，后面的几轮离开前文看不懂，没有取", f"{where}有 {rest} 句没取"))
    question, reply = said[start][1], said[start + 1][1]
    answers = {key: raw.get(key) for key in wanted if key != "output"} or {"output": reply}
    return {"instruction": "\n".join([*system, question]) if isinstance(question, str) else question, "input": "", **answers}


def examine(text, kind, context):
    """一份文字，照一种用法从头查到尾。

    参数:
        text (str): 文件的内容
        kind (str): KINDS 里的一种
        context (int): 上下文长度

    返回:
        tuple[list, list]: 能用的，每条的最后一项是它在哪里；问题
    """
    if not text.strip():
        return [], [(STOP, "文件是空的", "")]
    if kind == "messages":
        return read_messages(text)
    if kind != "text":
        return read_entries(text, kind, context)
    encode, cut = tiktoken.get_encoding("gpt2").encode, int(0.9 * len(text))  # 与 gpt_train.py 一样：前九成训练，后一成验证
    short = [
        (STOP, f"太短：{share} 只有 {count} 个词元，至少要 {least * context + 1} 个", "")
        for share, part, least in [("前 90%", text[:cut], 2), ("后 10%", text[cut:], 1)]
        if (count := len(encode(part, disallowed_special=()))) <= least * context
    ]
    paragraphs, at, issues = set(text[:cut].split("\n")), text[:cut].count("\n") + 1, short
    for number, line in enumerate(text[cut:].split("\n"), start=at):
        if len(line) > 30 and line in paragraphs:
            issues.append((NOTE, "验证的部分里，有训练时见过的整段", f"第 {number} 行"))
    return [(text, "全文")], issues


def divide(rows, kind):
    """切成训练集、验证集、测试集，与第 6、7 章的主脚本一条不差。

    参数:
        rows (list): 能用的，次序与文件相同
        kind (str): messages、instructions 或 preferences

    返回:
        dict[str, list]: 三份，里面的还是 rows 里的那些
    """
    if kind == "messages":
        train, validation, test = random_split(create_balanced_dataset(rows), 0.7, 0.1)
    else:
        train_end, test_end = int(len(rows) * 0.85), int(len(rows) * 0.85) + int(len(rows) * 0.1)
        train, test, validation = rows[:train_end], rows[train_end:test_end], rows[test_end:]
    return {"训练": train, "验证": validation, "测试": test}


def near_pairs(texts, threshold=0.8):
    """找近似的：两条共有的碎片（5 个字符一段），占两条全部碎片的八成以上（Jaccard 相似度）。

    不用 MinHash（如 datasketch 包）：它靠概率，会漏；几千条用下面的办法，一对不漏，也只要一两秒。

    参数:
        texts (list[str]): 各不相同的文字
        threshold (float): 多像才算近似，0 到 1

    返回:
        list[tuple[int, int]]: 近似的每一对，两条在 texts 里的序号
    """
    pieces = [{text[i : i + 5] for i in range(max(1, len(text) - 4))} for text in texts]
    counts = Counter(piece for own in pieces for piece in own)
    index, pairs = defaultdict(list), []
    for i, own in enumerate(pieces):
        # 共有八成，就不可能每一段罕见的都不共有：只要比最罕见的两成多一段，别的不必查。
        rare = sorted(own, key=lambda piece: (counts[piece], piece))[: len(own) - ceil(threshold * len(own)) + 1]
        for j in {j for piece in rare for j in index[piece]}:
            both = len(own & pieces[j])
            if both >= threshold * (len(own) + len(pieces[j]) - both):
                pairs.append((j, i))
        for piece in rare:
            index[piece].append(i)
    return pairs


def repeats(rows, kind):
    """重复的和近似的：整个文件里有多少，切开之后又有多少落在两边。

    参数:
        rows (list): 能用的
        kind (str): messages、instructions 或 preferences

    返回:
        list[str]: 说明，一句一行
    """
    asked = {id(row): row[1] if kind == "messages" else f"{row[1]['instruction']}\n{row[1]['input']}" for row in rows}
    # 短信里的号码、标点常换，不算差别；指令里的数字是题目，留着。
    ignored = r"[\W\d_]+" if kind == "messages" else r"[\W_]+"
    normal = {key: re.sub(ignored, " ", text.lower()).strip() for key, text in asked.items()}
    forms = sorted(set(normal.values()) - {""})
    close = defaultdict(set)
    for i, j in near_pairs(forms):
        close[forms[i]].add(forms[j])
        close[forms[j]].add(forms[i])
    exact, alike = Counter(asked.values()), Counter(normal.values())
    again = sum(count - 1 for count in exact.values())
    similar = sum(bool(normal[id(row)] in close or alike[normal[id(row)]] > exact[asked[id(row)]]) for row in rows)
    thing = "正文" if kind == "messages" else "问题"
    said = [f"重复　{thing}一字不差的，多出 {again} 条；有近似的另一条的，{similar} 条（八成以上相同）"]
    torn = len({row[:2] for row in rows}) - len({row[1] for row in rows}) if kind == "messages" else 0
    if torn:
        said.append(f"　　　其中 {torn} 条的标签自相矛盾，有时是 ham，有时是 spam")
    parts = divide(rows, kind)
    said.append("切分　" + "，".join(f"{name} {len(part)} 条" for name, part in parts.items()) + "（与第 6、7 章的脚本相同）")
    known, known_forms = ({table[id(row)]: row[-1] for row in reversed(parts["训练"])} for table in (asked, normal))
    for name in ("验证", "测试"):
        same = [(row, known[asked[id(row)]]) for row in parts[name] if asked[id(row)] in known]
        near = []
        for row in parts[name]:
            form = normal[id(row)]
            seen = next((other for other in [form, *sorted(close[form])] if other in known_forms), None)
            if asked[id(row)] not in known and seen is not None:
                near.append((row, known_forms[seen]))
        for pairs, what in [(same, "一字不差"), (near, "近似")]:
            if pairs:
                shown = "、".join(f"{row[-1]}与{where}" for row, where in pairs[:3])
                said.append(f"　　　{name}集里，{len(pairs)} 条与训练集的{what}：{shown}{'……' * (len(pairs) > 3)}")
    return said


def draw(series, path, context):
    """画词元数的分布：横轴每格翻一倍，几十个词元的正文和 1024 的上下文都看得清；超出的是红的。

    参数:
        series (dict[str, list]): 每一样的名字和各条的词元数，第一样是全长
        path (Path): 图片写到哪里
        context (int): 上下文长度
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import zhplot  # noqa: F401　导入它，图上就能写中文

    (name, lengths), *others = series.items()
    edges = 2 ** np.arange(0, np.log2(max(*lengths, *LIMITS.values(), context)) + 1, 0.5)
    figure, axis = plt.subplots(figsize=(7, 3.8), layout="constrained")
    fits = [length for length in lengths if length <= context]
    axis.hist([fits, [length for length in lengths if length > context]], edges, stacked=True, color=["tab:blue", "tab:red"], label=[name, f"超过 {context}"])
    for name, values in others:
        axis.hist(values, edges, histtype="step", linewidth=1.5, color="tab:orange", label=name)
    for limit, who in {context: "--context", **{limit: who for who, limit in LIMITS.items()}}.items():
        axis.axvline(limit, color="black", linestyle=":")
        over = sum(length > limit for length in lengths)
        axis.text(limit, axis.get_ylim()[1], f"{who} {limit}\n超过的 {over} 条", ha="right", va="top", fontsize=8)
    axis.set_xscale("log", base=2)
    ticks = [2**i for i in range(int(np.log2(edges[-1])) + 1)]
    axis.set_xticks(ticks, list(map(str, ticks)))
    axis.set_xlim(edges[edges <= min(map(min, series.values()))][-1] / 2, edges[-1])
    axis.set_xlabel("词元数（每格翻一倍）")
    axis.set_ylabel("条数")
    axis.legend(loc="upper left", fontsize=8)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def measure(rows, kind, context, path):
    """量每一条有多少个词元，画下来，说有多少会被截断。

    参数:
        rows (list): 能用的
        kind (str): messages、instructions 或 preferences
        context (int): 上下文长度
        path (Path): 图片写到哪里

    返回:
        list[str]: 说明，一句一行
    """
    encode = tiktoken.get_encoding("gpt2").encode
    if kind == "messages":
        series = {"正文": [len(encode(text, disallowed_special=())) for _, text, _ in rows]}
    else:
        answers = ("output",) if kind == "instructions" else ("chosen", "rejected")
        series = {"提示词和回答": [], "提示词": [prompt for prompt, *_ in rows]}
        for prompt, entry, _ in rows:  # 加 1 是结尾的 <|endoftext|>
            series["提示词和回答"].append(prompt + 1 + max(len(encode(entry[key], disallowed_special=())) for key in answers))
    draw(series, path, context)
    said = [f"长度　{name}：中位数 {int(np.median(values))} 个词元，最长 {max(values)}（{rows[int(np.argmax(values))][-1]}）" for name, values in series.items()]
    lengths = next(iter(series.values()))
    if over := [row[-1] for row, length in zip(rows, lengths) if length > context]:
        said.append(f"{NOTE}　超过上下文长度 {context} 的有 {len(over)} 条，尾巴会被截掉：{'、'.join(over[:5])}{'……' * (len(over) > 5)}")
    return [*said, f"　　　图　{path}"]


def render(rows, kind):
    """能用的那些，写成脚本认的样子。

    参数:
        rows (list): 能用的
        kind (str): KINDS 里的一种

    返回:
        str: 新文件的内容
    """
    if kind == "text":
        return rows[0][0]
    if kind != "messages":
        return json.dumps([entry for _, entry, _ in rows], ensure_ascii=False, indent=2) + "\n"
    buffer = io.StringIO()
    csv.writer(buffer, delimiter="\t", lineterminator="\n").writerows((label, text) for label, text, _ in rows)
    return buffer.getvalue()


def guess_kind(path, text):
    """看名字和内容，猜这份数据做什么用。

    参数:
        path (Path): 文件
        text (str): 它的内容

    返回:
        str: KINDS 里的一种
    """
    start = text.lstrip()
    if start[:1] in ("[", "{") or path.suffix in (".json", ".jsonl"):
        keys = set(re.findall(r'"(\w+)":', start[:20000]))
        return "preferences" if {"chosen", "rejected"} <= keys else "messages" if keys & LABEL_COLUMNS and keys & TEXT_COLUMNS else "instructions"
    labelled = re.match(r"(ham|spam|v1|label|category|标签)[\t,;]", start, re.IGNORECASE)
    return "messages" if labelled or path.suffix in (".tsv", ".csv") else "text"


def report(issues):
    """印出问题：同一类的合成一句，说有几处、头几处在哪里。

    参数:
        issues (list): 每个是（哪一类，是什么，在哪里）
    """
    grouped = defaultdict(list)
    for mark, what, where in issues:
        grouped[mark, re.sub(r"吞掉了后面 \d+ 行", "吞掉了后面的行", what)].append((where, what))
    for mark, what in sorted(grouped, key=lambda group: group[0] == NOTE):
        places = [where for where, _ in grouped[mark, what] if where]
        count = f"：{len(places)} 处，" if len(places) > 1 else "："[: len(places)]
        swallowed = sum(int(found[1]) for _, told in grouped[mark, what] if (found := re.search(r"吞掉了后面 (\d+) 行", told)))
        print(f"{mark}　{what}" + f"，共 {swallowed} 行" * bool(swallowed) + count + "、".join(places[:5]) + "……" * (len(places) > 5))


def convert(rows, kind, context, target, dropped):
    """把能用的写成新文件；写之前再查一遍，脚本不认的不写。

    参数:
        rows (list): 能用的
        kind (str): KINDS 里的一种
        context (int): 上下文长度
        target (Path): 写到哪里
        dropped (list[str]): 去掉的那些在哪里

    异常:
        ValueError: 能用的太少，写出来也用不了
    """
    content = render(rows, kind) if rows else ""
    left = [what for mark, what, _ in examine(content, kind, context)[1] if mark != NOTE]
    if left:
        raise ValueError(f"转换不了：{left[0]}")
    part = target.with_name(f"{target.name}.{os.getpid()}")  # 先写在旁边，写完才改名：中途停下，不留下半个文件
    try:
        part.write_text(content, encoding="utf-8", newline="")
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    print(f"\n转换　{len(rows)} 条写到 {target}" if kind != "text" else f"\n转换　写到 {target}")
    if dropped:
        print(f"　　　去掉了 {len(dropped)} 条：{'、'.join(dropped[:20])}{'……' * (len(dropped) > 20)}")


def main():
    """查一个数据文件；给了 --convert，再把能用的写成脚本认的样子。"""
    parser = ChineseParser("数据文件能不能用，为什么；能转换的，转换成脚本认的样子")
    parser.add_argument("file", type=Path, metavar="文件", help="要查的文件")
    parser.add_argument("--for", dest="kind", choices=KINDS, help="做什么用（默认：看内容猜）")
    parser.add_argument("--convert", type=Path, metavar="新文件", help="把能用的写到这里，原来的不动")
    parser.add_argument("--context", type=int, default=LIMITS["mini"], metavar="词元数", help="模型的上下文长度（默认：256，mini 的；GPT-2 是 1024）")
    args = parser.parse_args()
    os.environ["TIKTOKEN_CACHE_DIR"] = str(find_data("tiktoken"))
    try:
        if args.context < 1:
            parser.error(f"--context 至少是 1，不能是 {args.context}")
        if args.convert and args.convert.resolve() == args.file.resolve():
            parser.error("--convert 要写到另一个文件：原来的数据留着，转换错了还能重来")
        data = args.file.read_bytes()
        text, issues = decode(data)
        kind = args.kind or guess_kind(args.file, text)
        print(f"文件　{args.file}　{len(data):,} 字节　当作{KINDS[kind]}（{kind}）来查，上下文长度 {args.context}")
        rows, found = examine(text, kind, args.context)
        issues += found
        report(issues)
        stops, bad = [issue for issue in issues if issue[0] == STOP], [issue for issue in issues if issue[0] != NOTE]
        if rows and not stops and kind != "text":
            print("\n".join([*measure(rows, kind, args.context, OUTPUTS / f"lengths-{args.file.stem}.png"), *repeats(rows, kind)]))
        if args.convert and not stops:
            convert(rows, kind, args.context, args.convert, [where for mark, _, where in bad if mark == DROP])
            return
    except OSError as error:
        parser.error(f"读写不了 {error.filename or args.file}：{error.strerror}")
    except ValueError as error:
        parser.error(f"{args.file} {error}")
    if not bad:
        print(f"\n能用　{args.file}")
        return
    advice = "转换不了，要先改" if stops else f"能转换：python setup/check_data.py {args.file} --convert 新文件"
    _, what, where = next(issue for issue in bad if issue[0] != FIX) if stops else bad[0]
    print(f"不能用：{what}{f'（{where}）' * bool(where)}。{advice}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
