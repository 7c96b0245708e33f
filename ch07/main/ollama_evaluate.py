"""第 7 章 · 7.8 节　请另一个模型打分：Ollama

读完、敲完这个脚本，你应该能不看书回答：
    1. 没有标准答案的回答，怎么自动打分？给裁判看哪三样东西？
    2. Ollama 的回答为什么是一行一行的 JSON？读到哪里算完？
    3. 裁判给的平均分，差多少才算真的有差别？

运行（先装 Ollama，再在另一个终端里 ollama serve；第一次用 llama3 要下载约 4.7 GB：ollama pull llama3）：
    python ch07/main/ollama_evaluate.py                                       # 给微调脚本存下的回答打分
    python ch07/main/ollama_evaluate.py --file-path 某个文件.json --model phi3
    python ch07/main/ollama_evaluate.py --quick                               # 只打前 3 条，对应书上的 7.8 节
    脚本自己约 1 秒，0.1 GB；打分要多久看裁判有多大（llama3 在 M3 上 110 条约 1 分钟，书上的说法）

只用标准库的 urllib：Ollama 就是一个网络服务，问它和打开网页是一回事。
"""

import argparse
import json
import os
import re
import sys
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm

OUTPUTS = Path(__file__).resolve().parent.parent / "outputs"
URL = "http://localhost:11434/api/chat"  # Ollama 的默认地址；它只在本机上听，数据不会传到网上


def check_if_running(url=URL, timeout=5):
    """Ollama 在运行吗？

    原书用 psutil 找名字里有 ollama 的进程；进程在，服务不一定答话，服务在别的机器上时又找不到。所以直接问它一声。

    参数:
        url (str): /api/chat 的网址
        timeout (float): 最多等几秒

    返回:
        bool: 有回音就是 True

    出处: 原书 7.8 节
    """
    try:
        with urlopen(url.removesuffix("/api/chat") + "/api/tags", timeout=timeout) as response:  # 列出已下载的模型，最轻的一个请求
            return response.status == 200
    except (OSError, HTTPException):  # 连不上、超时，或那里不是 Ollama
        return False


def query_model(prompt, model="llama3", url=URL, timeout=120):
    """问 Ollama 一个问题，得到完整的回答。

    参数:
        prompt (str): 问题
        model (str): 哪个模型，要先 ollama pull
        url (str): /api/chat 的网址
        timeout (float): 最多等几秒没有动静；第一次要把模型读进内存，会慢一些

    返回:
        str: 回答

    异常:
        ValueError: 连不上、超时，没有这个模型，或回答不是 Ollama 的格式

    出处: 原书 7.8 节
    """
    data = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        # 想要每次一样的回答：固定种子，温度 0（贪心）；num_ctx 是上下文长度。即便如此，换一台机器、换个版本，分数还是会变。
        "options": {"seed": 123, "temperature": 0, "num_ctx": 2048},
    }
    request = Request(url, data=json.dumps(data).encode("utf-8"), method="POST")
    request.add_header("Content-Type", "application/json")
    response_data = ""
    try:
        with urlopen(request, timeout=timeout) as response:
            # 它生成一个词元就发一行 JSON：{"message": {"content": "8"}, "done": false}。最后一行的 done 是 true。
            for line in response:
                response_json = json.loads(line)
                if "error" in response_json:  # 生成到一半出错：前面的行都正常，错误夹在后面的行里
                    raise ValueError(f"Ollama 说：{response_json['error']}")
                response_data += response_json["message"]["content"]
                if response_json.get("done"):
                    return response_data
    except HTTPError as error:
        body = error.read().decode("utf-8", errors="replace")
        try:
            reason = json.loads(body)["error"]
        except (ValueError, KeyError, TypeError):
            reason = body.strip()[:100]
        hint = f"；先下载它：ollama pull {model}" if error.code == 404 else ""
        raise ValueError(f"Ollama 回了 HTTP {error.code}：{reason}{hint}") from None
    except TimeoutError:
        raise ValueError(f"等了 {timeout:g} 秒，{url} 没有回音；模型太大就换个小的，或用 --timeout 多等一会儿") from None
    except URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise ValueError(f"等了 {timeout:g} 秒，连不上 {url}；用 --timeout 多等一会儿") from None
        raise ValueError(f"连不上 {url}：Ollama 没有运行，请打开它的窗口程序，或在另一个终端里运行 ollama serve") from None
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
        raise ValueError(f"{url} 的回答不是 Ollama 的格式；网址应以 /api/chat 结尾") from None
    except (OSError, HTTPException):
        pass  # 断了：与没说完一样处理
    raise ValueError(f"{url} 话没说完就断了；再运行一次，还不行就看看 ollama serve 那边的报错")


# region 沿用 ch07/main/gpt_instruction_finetuning.py: download_and_load_file, format_input
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


# endregion


def generate_model_scores(json_data, json_key, model="llama3", url=URL, timeout=120):
    """请裁判给每一条回答打 0–100 分。

    参数:
        json_data (list[dict]): 每条有 instruction、input、output，和要打分的回答
        json_key (str): 回答放在哪个键里，如 "model_response"
        model (str): 裁判
        url (str): /api/chat 的网址
        timeout (float): 一条最多等几秒没有动静

    返回:
        list[int]: 分数；裁判没有给出整数的那几条不算，所以可能比 json_data 短

    出处: 原书 7.8 节
    """
    scores = []
    for entry in tqdm(json_data, desc="打分", ncols=80):
        # 裁判要看三样：题目、参考答案、要打分的回答。最后一句很要紧：不说"只回一个整数"，它会写一篇评语。
        prompt = (
            f"Given the input `{format_input(entry)}` "
            f"and correct output `{entry['output']}`, "
            f"score the model response `{entry[json_key]}`"
            f" on a scale from 0 to 100, where 100 is the best score. "
            f"Respond with the integer number only."
        )
        score = query_model(prompt, model, url, timeout)
        try:
            scores.append(int(score))
        except ValueError:  # "Score: 85"、"8.5"、一段话：与原书一样，印出来，不计入平均
            tqdm.write(f"这不是整数，不计入：{score[:80]!r}")
    return scores


# region 沿用 setup/find_data.py: read_text
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


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def main():
    """读一份带回答的数据，请 Ollama 打分，印平均分。"""
    parser = argparse.ArgumentParser(description="7.8 节　请 Ollama 里的模型给回答打分")
    parser.add_argument("--file-path", type=Path, help="带 model_response 的 JSON（默认：ch07/outputs/ 里最新的 instruction-data-with-response-*.json）")
    parser.add_argument("--model", default="llama3", help="裁判，要先 ollama pull（默认：llama3；内存小就用 phi3）")
    parser.add_argument("--url", default=URL, help=f"Ollama 的网址（默认：{URL}）")
    parser.add_argument("--timeout", type=float, default=120, help="一条最多等几秒没有动静（默认：120）")
    parser.add_argument("--quick", action="store_true", help="只打前 3 条")
    args = parser.parse_args()
    try:
        if not re.match(r"https?://[^/]+", args.url) or not args.timeout > 0:
            raise ValueError(f"--url 要以 http:// 开头（不能是 {args.url}），--timeout 要大于 0")
        found = sorted(OUTPUTS.glob("instruction-data-with-response-*.json"), key=lambda path: path.stat().st_mtime)
        if args.file_path is None and not found:
            raise ValueError("还没有回答可打分，先运行 python ch07/main/gpt_instruction_finetuning.py，或用 --file-path 给一个文件")
        path = args.file_path or found[-1]
        if not path.is_file():
            raise ValueError(f"找不到文件 {path}，请检查路径")
        test_data = download_and_load_file(path, "", keys=("instruction", "input", "output", "model_response"))
        print(f"回答　{path}，{len(test_data)} 条")
        if not check_if_running(args.url):
            raise ValueError(f"连不上 {args.url}：Ollama 没有运行，请打开它的窗口程序，或在另一个终端里运行 ollama serve")
        if args.quick:
            test_data = test_data[:3]
        scores = generate_model_scores(test_data, "model_response", args.model, args.url, args.timeout)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("\n停下了")
        sys.exit(130)

    for entry, score in zip(test_data, scores) if len(scores) == len(test_data) <= 3 else []:  # 书上先看 3 条
        print(f"\n参考答案　{entry['output']}\n模型回答　{entry['model_response']}\n得分　　　{score}")
    print(f"\n打了分的　{len(scores)} / {len(test_data)} 条（Number of scores: {len(scores)} of {len(test_data)}）")
    if scores:
        print(f"平均分　　{sum(scores) / len(scores):.2f}（Average score: {sum(scores) / len(scores):.2f}）")
    # 这个分数有多可靠：原书同一个模型的同一次训练，各次提交里印的平均分从 48.98 到 54.16，差的只是裁判的版本和运行的机器。
    # 所以 50 和 52 分不出高下；拿它与 Llama 3 8B 的 82.65（instruct 版）比，才看得出差距。
    print("提示　　　裁判自己就有 ±3 分的出入（书上同样的回答，各次从 49 到 54）：差不到 5 分，别下结论")

    print("\n这个数字对吗？")
    confirm(f"{len(scores)} 条分数都在 0 到 100 之间", all(0 <= score <= 100 for score in scores), "裁判没有照规则打分，换一个模型")


if __name__ == "__main__":
    main()
