"""第 7 章 · 7.2 节　准备指令数据：读进来，套上格式，切成三份

读完你应该能回答：
    1. 一条指令数据有哪三样东西？没有 input 的时候，提示词里少的是哪一段？
    2. 为什么要套一个固定的格式？训练用一种、提问用另一种会怎样？
    3. 切分时不打乱，对文件有什么要求？

运行：
    python ch07/main/example_01_dataset_and_prompt.py
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 1 秒，0.1 GB（2 核 CPU）
"""

import json
import os
import sys
import urllib.request
from pathlib import Path

import tiktoken

# 改这里
URL = "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/ch07/01_main-chapter-code/instruction-data.json"


# region 沿用 setup/find_data.py: find_data
def find_data(*names):
    """到几个数据文件夹里依次找，返回找到的第一个；都没有，就说先运行哪条命令，退出码 2。（详解见 setup/find_data.py）"""
    here = Path(__file__ if "__file__" in globals() else "x").resolve()
    root = next((folder for folder in here.parents if (folder / "setup" / "data").is_dir()), Path())
    for folder in [os.environ.get("LLM_DATA_DIR"), root / "setup" / "downloads", root / "setup" / "data", root / "ch05" / "outputs"]:
        for name in names:
            path = Path(folder or "") / name
            if folder and (path.is_file() or any(path.glob("*"))):
                return path
    commands = {"tiktoken": "setup/prepare.py", "gpt_mini.pth": "ch05/main/gpt_train.py（约 90 秒）"}
    commands |= {f"gpt2-{size}.pth": f"ch05/main/gpt_download.py --size {size}" for size in ("124M", "355M", "774M", "1558M")}
    print(f"找不到 {names[0]}，请先运行 python {commands.get(names[0], 'setup/download.py')}", file=sys.stderr)
    sys.exit(2)


# endregion

os.environ["TIKTOKEN_CACHE_DIR"] = str(find_data("tiktoken"))  # GPT-2 的词表由 setup/run.sh 放好，不联网


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


# %% 7.2　① 读进来：一个列表，每条是一个字典
def download_and_load_file(file_path, url):
    """读指令数据；file_path 不存在，就先从 url 下载。

    参数:
        file_path (str 或 Path): JSON 文件
        url (str): 从哪里下载

    返回:
        list[dict]: 每条一个字典，有 instruction、input、output 三段文字

    异常:
        ValueError: 文件里不是这样的数据
        OSError: 下载不了，或读写不了

    出处: 原书 7.2 节
    """
    if not os.path.exists(file_path):
        with urllib.request.urlopen(url, timeout=30) as response:
            text_data = response.read().decode("utf-8")
        with open(file_path, "w", encoding="utf-8") as file:
            file.write(text_data)

    advice = f"；全部问题和转换的办法：python setup/check_data.py {file_path}"
    try:
        with open(file_path, encoding="utf-8-sig") as file:  # -sig：去掉 Windows 记事本加在开头的 BOM
            data = json.load(file)
    except (ValueError, RecursionError) as error:
        place = f"（第 {error.lineno} 行第 {error.colno} 个字符）" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f"{file_path} 不是 UTF-8 编码的 JSON{place}{advice}") from None
    # 原书读进来就用；这里先查一遍，免得训练到一半，才发现有一条写错了。
    if not isinstance(data, list) or not data:
        raise ValueError(f"{file_path} 里应是一个列表，至少一条{advice}")
    for number, entry in enumerate(data, start=1):
        texts = [entry.get(key) for key in ("instruction", "input", "output")] if isinstance(entry, dict) else [None]
        # <|endoftext|> 表示"到此为止"，混在正文里，会把一条数据切成两条。
        if not all(isinstance(text, str) and "<|endoftext|>" not in text for text in texts) or not texts[0].strip():
            wanted = "instruction（不能是空的）、input、output 三段文字，不含 <|endoftext|>"
            raise ValueError(f"{file_path} 的第 {number} 条应有 {wanted}{advice}")
        # JSON 里写成 "\ud83d" 的是半个表情符号：读得进来，写不出去，训练完了存回答时才报错。
        whole = json.dumps(entry, ensure_ascii=False)
        if whole.encode("utf-8", "ignore").decode("utf-8") != whole:
            raise ValueError(f"{file_path} 的第 {number} 条有半个表情符号（孤立的代理项）{advice}")
    return data


# 书上第一次运行时从网上下载。这里交给它的总是一个已有的文件：有原书的就用原书的，没有就用自带的，所以不联网。
# 要原书的数据，运行 python setup/download.py instruction-data：国内有镜像，断了能接着下载。
path = find_data("instruction-data.json", "instructions.json")
data = download_and_load_file(path, URL)
print(f"【7.2】{path}\n一共 {len(data)} 条")

# 三段文字：要做什么（instruction）、对什么做（input，可以是空的）、应当怎样回答（output）。
# 自带的数据多出 rule 和 item，记着按哪条规则造的、问的是什么；提示词里用不到，打分时才用。
print(f"\ndata[50] 是\n{data[50]}\ndata[999] 是\n{data[999]}")
without_input = sum(not entry["input"] for entry in data)
print(f"没有 input 的有 {without_input} 条：要处理的东西写在指令里了，或者根本不需要")


# %% ② 套上格式：Alpaca 格式
# 模型只会接着写。哪里是指令、哪里该轮到自己，要用固定的记号隔开：### Instruction:、### Input:、### Response:。
# 记号本身没有魔力，用别的也行（练习 7.1 换成 Phi-3 的）；要紧的是训练和提问用同一种，差一个换行都可能答非所问。
def format_input(entry):
    """一条数据 → Alpaca 格式的提示词，到回答之前为止。

    参数:
        entry (dict): 有 instruction 和 input；input 是空的，就整段省略

    返回:
        str: 提示词

    出处: 原书 7.2 节；格式来自 Stanford Alpaca，2023
    """
    instruction_text = (
        f"Below is an instruction that describes a task. "
        f"Write a response that appropriately completes the request."
        f"\n\n### Instruction:\n{entry['instruction']}"
    )
    input_text = f"\n\n### Input:\n{entry['input']}" if entry["input"] else ""  # 省略时连标题也不留，免得教模型看空标题
    return instruction_text + input_text


# 一条完整的训练样本 = 提示词 + 想要的回答。
for title, wanted in [("有 input 的一条", True), ("没有 input 的一条，### Input: 整段都省了", False)]:
    entry = next(entry for entry in [data[50], data[999], *data] if bool(entry["input"]) == wanted)
    model_input = format_input(entry)
    desired_response = f"\n\n### Response:\n{entry['output']}"
    print(f"\n—— {title} ——\n{model_input + desired_response}")

# %% ③ 切成三份：85% 训练，10% 测试，5% 验证
# 按文件里的次序切，不打乱：谁来切都得到同样的三份，分数才能互相比较。
# 代价是文件本身必须是乱序的。假如前一半全是"复数"、后一半全是"过去式"，测试的题训练时就一道都没见过。
# 反过来，同一道题抄了几遍、散在各处，测试的题就是练过的：分数好看，考的却是记性。
# 自己的数据有没有这两种毛病，setup/check_data.py 照同样的切法数给你看：一字不差的几条，只差几个字的几条，各是第几条。
train_portion = int(len(data) * 0.85)
test_portion = int(len(data) * 0.1)
train_data = data[:train_portion]
test_data = data[train_portion : train_portion + test_portion]
val_data = data[train_portion + test_portion :]  # 剩下的全给验证集：int 会舍去零头，再取一次 5% 就会丢掉几条
print(f"\n训练集 {len(train_data)} 条，验证集 {len(val_data)} 条，测试集 {len(test_data)} 条")

# %% ④ 一条有多长
# 格式要占地方：那两句开场白，每条都有一份。书上的做法里，提示词的每个词元也要学着预测，回答只是其中一部分（练习 7.2）。
tokenizer = tiktoken.get_encoding("gpt2")
opening = format_input({"instruction": "", "input": ""}).split("\n\n")[0]
lengths = [len(tokenizer.encode(format_input(entry) + f"\n\n### Response:\n{entry['output']}")) for entry in data]
answers = [len(tokenizer.encode(entry["output"])) for entry in data]
print(f"\n一条平均 {sum(lengths) / len(data):.0f} 个词元，最短 {min(lengths)}，最长 {max(lengths)}")
print(f"其中开场白 {len(tokenizer.encode(opening))} 个")
print(f"　　回答平均 {sum(answers) / len(data):.1f} 个，占 {sum(answers) / sum(lengths):.0%}")

# %% 这个数字对吗？
print("\n这个数字对吗？")
confirm("三份按次序接起来，就是全部", train_data + test_data + val_data == data, "切片的起点写错了，中间重叠或漏掉了")
questions = {(entry["instruction"], entry["input"]) for entry in train_data}
repeated = sum((entry["instruction"], entry["input"]) in questions for entry in test_data)
print(f"  测试集的 {len(test_data)} 道题，有 {repeated} 道在训练集里原样出现过；有的话，那几道考的只是记性")
if path.name == "instruction-data.json" and len(data) == 1100:
    sizes = [len(part) for part in (train_data, val_data, test_data)]
    confirm("与书上相同：1100 条，切成 935 / 55 / 110", sizes == [935, 55, 110], "比例写错了")
    spelling = data[50]["output"] == "The correct spelling is 'Occasion.'"
    confirm("data[50] 的答案是 The correct spelling is 'Occasion.'", spelling, "不是原书的文件")
    antonym = data[999]["output"] == "An antonym of 'complicated' is 'simple'."
    confirm("data[999] 的答案是 An antonym of 'complicated' is 'simple'.", antonym, "不是原书的文件")

# %% 动手改
# 1. 在 format_input 的 ### Input: 后面少写一个 \n，看看两条样本哪一条变了、哪一条没变。
# 2. 把 0.85 改成 0.9、0.1 改成 0.05，先算出三个数，再运行。
# 3. 写一条自己的数据，如 {"instruction": "Say hello.", "input": "", "output": "Hello!"}，套上格式印出来。
