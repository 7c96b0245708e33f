"""第 7 章 · 7.2 节　准备指令数据：读进来，套上格式，切成三份

读完你应该能回答：
    1. 一条指令数据有哪三样东西？没有 input 的时候，提示词里少的是哪一段？
    2. 为什么要套一个固定的格式？训练用一种、提问用另一种会怎样？
    3. 切分为什么不打乱？文件里的次序不乱会出什么事？

运行：
    python ch07/main/example_01_dataset_and_prompt.py
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 1 秒，0.1 GB（2 核 CPU）

形状记号（全书统一）：t 序列长度（token 数）　n 样本数
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path

import tiktoken

URL = "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/ch07/01_main-chapter-code/instruction-data.json"


# region 沿用 ch07/main/gpt_instruction_finetuning.py: download_and_load_file, format_input, split_data
def download_and_load_file(file_path, url, keys=("instruction", "input", "output")):
    """读指令数据。名字与原书的相同，但它不自己上网：没有文件，就告诉你怎么下载。（详解见 ch07/main/gpt_instruction_finetuning.py）"""
    if not os.path.isfile(file_path):
        raise FileNotFoundError(f"找不到 {file_path}，请先下载：python setup/download.py instruction-data（也可以用浏览器打开 {url}）")
    try:
        data = json.loads(read_text(file_path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file_path} 不是完整的 JSON：第 {error.lineno} 行第 {error.colno} 列读不懂，多半是少了逗号、引号，或文件没有下载完") from None
    except RecursionError:
        raise ValueError(f"{file_path} 里的括号套得太深，不是指令数据") from None
    if not isinstance(data, list) or not data:
        raise ValueError(f"{file_path} 里应是一个列表 [{{…}}, {{…}}]，至少一条，现在是{'空的列表' if data == [] else type(data).__name__}")
    for number, entry in enumerate(data, start=1):
        if not isinstance(entry, dict):
            raise ValueError(f"{file_path} 的第 {number} 条应是 {{…}}，现在是 {type(entry).__name__}")
        for key in keys:
            if not isinstance(entry.get(key), str):
                raise ValueError(f"{file_path} 的第 {number} 条" + (f"的 {key} 不是文字" if key in entry else f"少了 {key}"))
            if "<|endoftext|>" in entry[key]:
                raise ValueError(f"{file_path} 的第 {number} 条的 {key} 里有 <|endoftext|>，请去掉")
        if not entry["instruction"].strip():
            raise ValueError(f"{file_path} 的第 {number} 条的 instruction 是空的")
    return data


def format_input(entry):
    """一条数据 → Alpaca 格式的提示词，到回答之前为止。（详解见 ch07/main/gpt_instruction_finetuning.py）"""
    instruction_text = (
        f"Below is an instruction that describes a task. "
        f"Write a response that appropriately completes the request."
        f"\n\n### Instruction:\n{entry['instruction']}"
    )
    input_text = f"\n\n### Input:\n{entry['input']}" if entry["input"] else ""
    return instruction_text + input_text


def split_data(data):
    """按文件里的次序切成训练、测试、验证三份：85%、10%、5%。不打乱，所以数据在文件里就应当是乱序的。（详解见 ch07/main/gpt_instruction_finetuning.py）"""
    train_portion = int(len(data) * 0.85)
    test_portion = int(len(data) * 0.1)
    train_data = data[:train_portion]
    test_data = data[train_portion : train_portion + test_portion]
    val_data = data[train_portion + test_portion :]
    return train_data, val_data, test_data


# endregion


# region 沿用 setup/find_data.py: find_data, read_text
def find_data(*names):
    """到几个数据文件夹里依次找，返回找到的第一个；都没有，就说先运行哪条命令，退出码 2。（详解见 setup/find_data.py）"""
    here = Path(__file__ if "__file__" in globals() else "x").resolve()
    root = next((folder for folder in here.parents if (folder / "setup" / "data").is_dir()), Path())
    for folder in [os.environ.get("LLM_DATA_DIR"), root / "setup" / "downloads", root / "setup" / "data", root / "ch05" / "outputs"]:
        for name in names:
            if folder and (Path(folder) / name).exists():
                return Path(folder) / name
    commands = {"tiktoken": "setup/prepare.py", "gpt_mini.pth": "ch05/main/gpt_train.py（约 90 秒）", "gpt2-124M.pth": "ch05/main/gpt_download.py"}
    print(f"找不到 {names[0]}，请先运行 python {commands.get(names[0], 'setup/download.py')}", file=sys.stderr)
    sys.exit(2)


def read_text(path):
    """读一个文本文件；不是能用来训练的文本时，用一句中文说清楚。（详解见 setup/find_data.py）"""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise ValueError(f"读不了 {path}：文件不存在，或不是 UTF-8 编码的文本（请用编辑器另存为 UTF-8）") from None
    if "\0" in text or not text.strip():
        raise ValueError(f"{path} 是空的，或是二进制文件，请换一个文本文件")
    return text


# endregion

os.environ["TIKTOKEN_CACHE_DIR"] = str(find_data("tiktoken"))  # GPT-2 的词表由 setup/run.sh 放好，不联网


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion

# %% 7.2.1　读进来：一个列表，每条是一个字典
# 文件是 JSON。原书从网上下载；这里只读本机的文件，有原书的就用原书的，没有就用自带的。
try:
    path = find_data("instruction-data.json", "instructions.json")
    data = download_and_load_file(path, URL)
except (ValueError, OSError) as error:
    sys.exit(f"出错了：{error}")
print(f"【7.2】{path}\n【7.2】Number of entries（条数）: {len(data)}")

# 三样东西：要做什么（instruction）、对什么做（input，可以没有）、应当怎样回答（output）。
# 自带的数据多出 rule 和 item，记着按哪条规则造的、问的是什么；提示词里用不到它们，打分时才用。
print(f"【7.2】Example entry:\n {data[50 % len(data)]}")
print(f"【7.2】Another example entry:\n {data[999 % len(data)]}")
without_input = sum(not entry["input"] for entry in data)
print(f"【7.2】没有 input 的有 {without_input} 条：要处理的东西写在指令里了，或者根本不需要")


# %% 7.2.2　套上格式：Alpaca 格式
# 模型只会接着写。要让它知道哪里是指令、哪里该轮到自己，就得用固定的记号隔开：### Instruction:、### Input:、### Response:。
# 记号本身没有魔力，用别的也行（练习 7.1 换成 Phi-3 的）；要紧的是训练时用什么，提问时就用什么，差一个换行都可能答非所问。
def show(entry):
    """印出一条完整的训练样本：提示词加上想要的回答。

    参数:
        entry (dict): 指令数据里的一条
    """
    model_input = format_input(entry)
    desired_response = f"\n\n### Response:\n{entry['output']}"
    print(model_input + desired_response)


print("\n【7.2】有 input 的一条：")
show(next((entry for entry in [data[50 % len(data)], *data] if entry["input"]), data[0]))
print("\n【7.2】没有 input 的一条，### Input: 整段都省了，不是留一个空的标题：")
show(next((entry for entry in [data[999 % len(data)], *data] if not entry["input"]), data[0]))

# %% 7.2.3　切成三份：85% 训练，10% 测试，5% 验证
# 按文件里的次序切，不打乱：谁来切都得到同样的三份，分数才能互相比较。
# 代价是文件本身必须是乱序的。假如前一半全是"复数"、后一半全是"过去式"，测试的题训练时就一道都没见过。
train_data, val_data, test_data = split_data(data)
print(f"\n【7.2】Training set length（训练）: {len(train_data)}")
print(f"【7.2】Validation set length（验证）: {len(val_data)}")
print(f"【7.2】Test set length（测试）: {len(test_data)}")

# %% 一条有多长
# 格式要占地方：下面这 18 个词元的开场白，每条都有一份。回答通常只占一条的一小半，模型的大部分"功课"其实是背提示词。
tokenizer = tiktoken.get_encoding("gpt2")
opening = format_input({"instruction": "", "input": ""}).split("\n\n")[0]
lengths = [len(tokenizer.encode(format_input(entry) + f"\n\n### Response:\n{entry['output']}")) for entry in data]
answers = [len(tokenizer.encode(entry["output"])) for entry in data]
print(f"\n【7.2】开场白 {len(tokenizer.encode(opening))} 个词元；一条最短 {min(lengths)}、最长 {max(lengths)}、平均 {sum(lengths) / len(data):.1f} 个")
print(f"【7.2】回答平均 {sum(answers) / len(data):.1f} 个词元，占一条的 {sum(answers) / sum(lengths):.0%}")
if "rule" in data[0]:
    counts = Counter(entry.get("rule", "（没有分类）") for entry in data)
    print("【7.2】各条规则有几条　" + "　".join(f"{rule} {count}" for rule, count in counts.most_common()))

# %% 这个数字对吗？
print("\n这个数字对吗？")
confirm("三份加起来是全部，一条不多、一条不少", len(train_data) + len(val_data) + len(test_data) == len(data), "切片的起点写错了，中间重叠或漏掉了")
questions = {(entry["instruction"], entry["input"]) for entry in train_data}
repeated = sum((entry["instruction"], entry["input"]) in questions for entry in test_data)
print(f"  测试集的 {len(test_data)} 道题，有 {repeated} 道在训练集里原样出现过；有的话，那几道考的只是记性")
if path.name == "instruction-data.json" and len(data) == 1100:
    confirm("与书上相同：1100 条，切成 935 / 55 / 110", (len(train_data), len(val_data), len(test_data)) == (935, 55, 110), "比例写错了")
    confirm("data[50] 的答案是 The correct spelling is 'Occasion.'", data[50]["output"] == "The correct spelling is 'Occasion.'", "不是原书的文件")
    confirm("data[999] 问的是 complicated 的反义词，答案是 simple", "complicated" in data[999]["instruction"] and "simple" in data[999]["output"], "不是原书的文件")

# %% 动手改
# 1. 在 format_input 的 ### Input: 后面少写一个 \n，看看两条样本哪一条变了、哪一条没变。
# 2. 把 0.85 改成 0.9、0.1 改成 0.05，先算出三个数，再运行。
# 3. 写一条自己的数据，如 {"instruction": "Say hello.", "input": "", "output": "Hello!"}，用 show 印出来。
