"""第 7 章 · 7.8 节　给回答打分：与参考答案比，或请另一个模型当裁判

读完你应该能回答：
    1. 一字不差才算对，什么样的题可以这样判？什么样的题会冤枉？
    2. 请模型当裁判，要给它看哪三样东西？少了哪一样都会怎样？
    3. Ollama 的回答为什么是一行一行的 JSON？
    4. 裁判没有只回一个整数，什么时候取得出分数，什么时候不该猜？

运行：
    python ch07/main/example_06_scores.py        # 先运行 example_05_responses.py
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 1 秒，0.1 GB（2 核 CPU）；Ollama 在运行的话，要多久看裁判有多大
"""

import json
import os
import re
import sys
import threading
import urllib.request
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tqdm import tqdm

# 改这里
here = Path(__file__ if "__file__" in globals() else "x").resolve()  # 笔记本里没有 __file__，就从当前文件夹往上找
OUTPUTS = next((folder / "ch07" for folder in here.parents if (folder / "ch07").is_dir()), Path()) / "outputs"
RESPONSES = OUTPUTS / "instruction-data-with-response.json"  # 也可以换成原书公开的那一份：110 条 355M 的回答
MODEL = "llama3"  # 裁判，先 ollama pull llama3（约 4.7 GB）；内存小就用 "phi3"
URL = "http://localhost:11434/api/chat"  # Ollama 的默认地址；它只在本机上听，数据不会传到网上


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


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion

# %% 7.8　① 读入 7.7 节存下的回答
if not RESPONSES.exists():
    print(f"找不到 {RESPONSES}，请先运行 python ch07/main/example_05_responses.py（约 40 秒）", file=sys.stderr)
    sys.exit(2)
test_data = json.loads(RESPONSES.read_text(encoding="utf-8"))
print(f"【7.8】{RESPONSES}　{len(test_data)} 条")

# %% ② 办法一：与参考答案比，一字不差才算对
# 最便宜，也最严，只适合答案唯一、说法固定的题：自带的数据就是，每种题都约定了用哪句话回答。
# 书上的题不行：参考答案说"快得像闪电"，模型说"快得像子弹"，一个字也对不上，却是好答案。
exact = sum(entry["model_response"] == entry["output"] for entry in test_data)
print(f"\n与参考答案一字不差　{exact} / {len(test_data)}")

# 自带的数据里，测试题多数是"训练时问过、换了问法"，少数从没问过：前者考记性，后者才考会不会，要分开数。
if all("rule" in entry for entry in test_data):
    data = json.loads(find_data("instructions.json").read_text(encoding="utf-8"))
    asked = {(entry["rule"], entry["item"]) for entry in data[: int(len(data) * 0.85)]}  # 哪条规则、问的是什么
    for title, wanted in [("训练时问过，换了问法", True), ("训练时没有问过", False)]:
        part = [entry for entry in test_data if ((entry["rule"], entry["item"]) in asked) == wanted]
        right = sum(entry["model_response"] == entry["output"] for entry in part)
        print(f"　{title}　{right} / {len(part)}")
    wrong = [entry for entry in test_data if entry["model_response"] != entry["output"]]
    for entry in wrong[:3]:
        print(f"　答错的　{entry['model_response']}　参考答案　{entry['output']}")

# %% ③ 办法二：请另一个模型当裁判。它在运行吗？
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


ollama_running = check_if_running("ollama")
print(f"\nOllama 在运行吗？{'在' if ollama_running else '不在：装好之后，在另一个终端里 ollama serve'}")


# %% ④ 没有 Ollama，先造一个假的，看清楚它怎样说话
class FakeOllama(BaseHTTPRequestHandler):
    """假裁判：照 Ollama 的样子答话，回答与参考答案一字不差给 100 分，不然给 0 分。"""

    def do_POST(self):
        """读问题，一行一行地回答：每行一个 JSON，装着一小段，最后一行的 done 是 true。"""
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        _, _, _, output, _, response, _ = question["messages"][0]["content"].split("`", 6)  # 三样东西都夹在反引号里
        self.send_response(200)
        self.end_headers()
        for piece in "100" if output == response else "0":
            self.wfile.write(json.dumps({"message": {"content": piece}, "done": False}).encode() + b"\n")
        self.wfile.write(json.dumps({"message": {"content": ""}, "done": True}).encode() + b"\n")

    def log_message(self, *_):
        """不把每次请求都印出来。"""


if not ollama_running:
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeOllama)  # 端口写 0：让系统挑一个空着的
    threading.Thread(target=server.serve_forever, daemon=True).start()
    URL = f"http://127.0.0.1:{server.server_port}/api/chat"
    print(f"下面用假裁判，它在 {URL}")


# %% ⑤ 问一句
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


# 给裁判看三样：题目、参考答案、要打分的回答。没有题目，它不知道在答什么；没有参考答案，只能凭自己的学问，而它也会错。
entry = test_data[0]
prompt = (
    f"Given the input `{format_input(entry)}` "
    f"and correct output `{entry['output']}`, "
    f"score the model response `{entry['model_response']}`"
    f" on a scale from 0 to 100, where 100 is the best score. "
    f"Respond with the integer number only."
)
print(f"\n给裁判的问题：\n{prompt}\n裁判的回答：{query_model(prompt, MODEL, URL)}")


# %% ⑥ 裁判的话里，哪个数是分数？
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


for reply in ["85", "<think>maybe 70</think>**85**/100", "Score: 92.5", "得分：85 分", "between 80 and 90", "I would give 85 out of 90."]:
    print(f"　{reply}　→　{parse_score(reply)}")


# %% ⑦ 给每一条打分，求平均
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


scores = generate_model_scores(test_data, "model_response", MODEL)
mean = f"{sum(scores) / len(scores):.2f}" if scores else "—"
print(f"平均 {mean} 分（{len(scores)} / {len(test_data)} 条打了分）")
# 裁判偏爱长的、客气的、像它自己写的回答；书上同样的回答，各次提交里的平均分从 48.98 到 54.16，差的只是版本和机器。
# 所以差不到 5 分，别下结论。

# %% 这个数字对吗？
print("\n这个数字对吗？")
scored = len(scores) >= 0.9 * len(test_data)  # 只打了几条的平均分，说不了全部
confirm(f"{len(scores)} / {len(test_data)} 条打了分，不少于九成", scored, "裁判没有照规则打分，平均分不作数：换一个模型")
if not ollama_running:
    confirm(f"假裁判给满分的，正好是一字不差的 {exact} 条", scores.count(100) == exact, "三样东西的次序写错了")

# %% 动手改
# 1. 在 generate_model_scores 的问题里，把 entry[json_key] 换成 entry['output']：裁判看到的永远是参考答案，平均几分？
# 2. 让假裁判答 "between 80 and 90"，看 generate_model_scores 怎样处理；再让它答 "I scored it 100"。
