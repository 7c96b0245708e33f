"""第 7 章 · 7.8 节　请另一个模型打分：Ollama

读完、敲完这个脚本，你应该能不看书回答：
    1. 没有标准答案的回答，怎么自动打分？给裁判看哪三样东西？
    2. Ollama 的回答为什么是一行一行的 JSON？
    3. 裁判给的平均分，差多少才算真的有差别？

运行（先装 Ollama，在另一个终端里 ollama serve；第一次用 llama3 要下载约 4.7 GB：ollama pull llama3）：
    python ch07/main/ollama_evaluate.py                                       # 给 ch07/outputs/ 里最新的一份回答打分
    python ch07/main/ollama_evaluate.py --file-path 某个文件.json --model phi3
    脚本自己约 1 秒，0.1 GB；打分要多久看裁判有多大（llama3 在 M3 上 110 条约 1 分钟，书上的说法）
"""

import argparse
import json
import os
import re
import urllib.request
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError

from tqdm import tqdm

# 改这里：都可以用命令行改
OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
MODEL = "llama3"  # 裁判；内存小就用 "phi3"
URL = "http://localhost:11434/api/chat"  # Ollama 的默认地址；它只在本机上听，数据不会传到网上


# region 沿用 ch07/main: download_and_load_file, format_input
def download_and_load_file(file_path, url):
    """读指令数据；file_path 不存在，就先从 url 下载。（详解见 ch07/main/example_01_dataset_and_prompt.py）"""
    if not os.path.exists(file_path):
        with urllib.request.urlopen(url, timeout=30) as response:
            text_data = response.read().decode("utf-8")
        with open(file_path, "w", encoding="utf-8") as file:
            file.write(text_data)
    advice = f"；全部问题和转换的办法：python setup/check_data.py {file_path}"
    try:
        with open(file_path, encoding="utf-8-sig") as file:
            data = json.load(file)
    except (ValueError, RecursionError) as error:
        place = f"（第 {error.lineno} 行第 {error.colno} 个字符）" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f"{file_path} 不是 UTF-8 编码的 JSON{place}{advice}") from None
    if not isinstance(data, list) or not data:
        raise ValueError(f"{file_path} 里应是一个列表，至少一条{advice}")
    for number, entry in enumerate(data, start=1):
        texts = [entry.get(key) for key in ("instruction", "input", "output")] if isinstance(entry, dict) else [None]
        if not all(isinstance(text, str) and "<|endoftext|>" not in text for text in texts) or not texts[0].strip():
            wanted = "instruction（不能是空的）、input、output 三段文字，不含 <|endoftext|>"
            raise ValueError(f"{file_path} 的第 {number} 条应有 {wanted}{advice}")
        whole = json.dumps(entry, ensure_ascii=False)
        if whole.encode("utf-8", "ignore").decode("utf-8") != whole:
            raise ValueError(f"{file_path} 的第 {number} 条有半个表情符号（孤立的代理项）{advice}")
    return data


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


# region 沿用（含注释） ch07/main: OPENER, check_if_running, query_model, parse_score, generate_model_scores
# 裁判由 Ollama 运行：一个装在本机上的程序，管着许多开源模型，像网页服务器一样，等别人来问。
# 开着代理软件时，urllib 连本机的地址也交给代理，就连不上了；这个"开门的"不用代理。
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def check_if_running(process_name):
    """名叫 process_name 的服务在运行吗？原书用 psutil 找进程；这里少装一个包，直接问服务器：Ollama 的首页写着 "Ollama is running"。

    参数:
        process_name (str): 名字，如 "ollama"

    返回:
        bool: URL 那里答话的是它，就是 True

    出处: 原书 7.8 节
    """
    try:
        with OPENER.open(URL.removesuffix("/api/chat"), timeout=5) as response:
            return process_name.lower() in response.read().decode("utf-8").lower()
    except (OSError, HTTPException):  # 连不上、没有回音，或答话的不是网页服务器
        return False


def query_model(prompt, model="llama3", url=URL):
    """问 Ollama 一句，得到完整的回答。

    参数:
        prompt (str): 问题
        model (str): 哪个模型，要先 ollama pull
        url (str): /api/chat 的网址

    返回:
        str: 回答

    异常:
        OSError: 连不上，或没有这个模型（HTTP 404）

    出处: 原书 7.8 节
    """
    data = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        # 想要每次一样的回答：种子固定，温度 0（贪心）；num_ctx 是上下文长度。即便如此，换台机器，分数还是会变。
        "options": {"seed": 123, "temperature": 0, "num_ctx": 2048},
    }
    payload = json.dumps(data).encode("utf-8")  # 网络上传的是字节
    request = urllib.request.Request(url, data=payload, method="POST")
    request.add_header("Content-Type", "application/json")

    response_data = ""
    with OPENER.open(request, timeout=300) as response:  # 第一次问，要等它把几 GB 的模型读进内存
        # 它生成一个词元就发一行：{"message": {"content": "8"}, "done": false}。一行一行读，把片段接起来。
        for line in response:
            response_json = json.loads(line)
            response_data += response_json["message"]["content"]
    return response_data


def parse_score(reply):
    """从裁判的话里取出分数；只有一个数可能是分数才取，不猜。

    参数:
        reply (str): 裁判的回答

    返回:
        float 或 None: 0 到 100 的分数；看不出来就是 None

    示例:
        >>> parse_score("**85**/100"), parse_score("between 80 and 90")
        (85.0, None)
    """
    # ① 会推理的模型先写一段草稿，里面的数不算；*、_ 和 ` 只是排版。
    text = re.sub(r"[*_`]", "", reply.rpartition("</think>")[2])
    # ② 满分不是分数：85/100、85 out of 100、满分 100、from 0 to 100。分母是别的（out of 90），就会剩下两个数，不猜。
    text = re.sub(r"(?i)(?:/|\bout of|满分|\b0 ?(?:-|–|to|到)) ?100(?:\.0+)?(?!\.?\d)", "分", text)
    # ③ 只看说到分数的行、以一个数开头的行、没有别的字的行："It lists 3 animals." 里的 3 不是分数。
    says = r"(?i)\b(?:scor|rat(?:e|ing)|grad(?:e|ing)|give\b|assign|award|deserve)|得分|评分|打分|分数|\d ?(?:分|points?\b)"
    lines = [line for line in text.splitlines() if re.search(says + r"|^\W*\d[\d.]* ?[^\w\s.]|^[\W\d]*$", line)]
    # ④ 数的前面有负号、"at least" 之类，就不是一个确定的分数；连着它取出来，开头便不是数字。
    numbers = set(re.findall(r"(?:[-−–<>≤≥.负]|than |least |most |至少|不到)?\d+(?:\.\d+)?", " ".join(lines)))
    score = numbers.pop() if len(numbers) == 1 and "<think>" not in text else "-"  # 草稿没有写完，后面就没有分数
    return float(score) if score[0].isdigit() and float(score) <= 100 else None


def generate_model_scores(json_data, json_key, model="llama3"):
    """请裁判给每一条回答打 0–100 分。

    参数:
        json_data (list[dict]): 每条有 instruction、input、output，和要打分的回答
        json_key (str): 回答放在哪个键里，如 "model_response"
        model (str): 裁判

    返回:
        list[float]: 分数；看不出是几分的不算，所以可能比 json_data 短

    出处: 原书 7.8 节
    """
    scores = []
    for number, entry in enumerate(tqdm(json_data, desc="打分", ncols=80), start=1):
        prompt = (
            f"Given the input `{format_input(entry)}` "
            f"and correct output `{entry['output']}`, "
            f"score the model response `{entry[json_key]}`"
            f" on a scale from 0 to 100, where 100 is the best score. "
            f"Respond with the integer number only."  # 不说这一句，它会写一篇评语
        )
        reply = query_model(prompt, model, URL)
        score = parse_score(reply)  # 书上是 int(reply)："Score: 85" 也丢了
        if score is None:  # 不算，但要印出来，好知道少了哪几条；记成 0 分，会把平均分白白拉低
            tqdm.write(f"第 {number} 条看不出是几分，不计入：…{reply[-100:]!r}")
        else:
            scores.append(score)
    return scores


# endregion


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def main():
    """读一份带回答的数据，请 Ollama 打分，印平均分。"""
    global URL  # 上面的几个函数都问这个地址
    parser = argparse.ArgumentParser(description="7.8 节　请 Ollama 里的模型给回答打分")
    parser.add_argument("--file-path", type=Path, help="带 model_response 的 JSON（默认：ch07/outputs/ 里最新的一份）")
    parser.add_argument("--model", default=MODEL, help=f"裁判，要先 ollama pull（默认：{MODEL}）")
    parser.add_argument("--url", default=URL, help=f"Ollama 的网址（默认：{URL}）")
    args = parser.parse_args()
    URL = args.url
    found = sorted(OUTPUTS.glob("instruction-data-with-response*.json"), key=lambda path: path.stat().st_mtime)
    try:
        if args.file_path is None and not found:
            raise ValueError("还没有回答可打分，先运行 python ch07/main/gpt_instruction_finetuning.py")
        path = args.file_path or found[-1]
        if not path.is_file():
            raise ValueError(f"找不到文件 {path}")
        test_data = download_and_load_file(path, "")
        if not all(isinstance(entry.get("model_response"), str) for entry in test_data):
            raise ValueError(f"{path} 里有的条目没有 model_response：先让模型回答，再来打分")
        if not URL.startswith("http") or not check_if_running("ollama"):
            raise ValueError(f"{URL} 那里没有 Ollama：打开它的窗口程序，或在另一个终端里运行 ollama serve")
        print(f"回答　{path}，{len(test_data)} 条；裁判　{args.model}")
        scores = generate_model_scores(test_data, "model_response", args.model)
    except HTTPError as error:  # 连上了，但它不肯：没有这个模型（404），或内存不够（500）；原因写在正文里
        reason = error.read().decode("utf-8", errors="replace").strip()
        parser.error(f"Ollama 说：{reason or error}；没有这个模型，就先 ollama pull {args.model}")
    except (OSError, HTTPException, KeyError, TypeError, json.JSONDecodeError) as error:  # 等太久、断了，或答的不是那种格式
        parser.error(f"{URL} 没有照 Ollama 的格式把话说完（{error}）；看看 ollama serve 那边的报错，网址应以 /api/chat 结尾")
    except ValueError as error:
        parser.error(str(error))

    mean = f"{sum(scores) / len(scores):.2f}" if scores else "—"
    print(f"平均分　{mean}（{len(scores)} / {len(test_data)} 条打了分）")
    # 这个分数有多可靠：原书同一个模型的同一次训练，各次提交里印的平均分从 48.98 到 54.16，差的只是裁判的版本和运行的机器。
    # 所以 50 和 52 分不出高下；拿它与 Llama 3 8B 的 82.65（instruct 版）比，才看得出差距。
    print("提示　　裁判自己就有 ±3 分的出入：差不到 5 分，别下结论")

    print("\n这个数字对吗？")
    scored = len(scores) >= 0.9 * len(test_data)  # 只打了几条的平均分，说不了全部
    confirm(f"{len(scores)} / {len(test_data)} 条打了分，不少于九成", scored, "裁判没有照规则打分，平均分不作数：换一个模型")


if __name__ == "__main__":
    main()
