"""「这个数字对吗？」　每个脚本结尾都有的自查，和一次查完全书的命令

学的人最常问的一句话是："我跑出来这个数，正常吗？"所以每个脚本都在结尾自己回答：
得到了什么、应该是什么、对不上时通常错在哪里（confirm，各脚本都沿用它）。
这个命令把脚本跑一遍，再拿印出来的数与 setup/golden.json 里的逐个比：书上每个不靠运气的数都在那里。

运行：
    python setup/self_check.py                    # 全书
    python setup/self_check.py ch03 appendix-A    # 只查这两章
    python setup/self_check.py --device mps       # 能选设备的脚本在 MPS 上跑，容差跟着放宽
    python setup/self_check.py --json 结果.json   # 结果另存一份，报告问题时附上
    约 80 秒，2.3 GB（2 核 CPU，同时跑两个脚本）；--full 再加一两分钟，训练 124M 一轮

golden.json 里每个数写着：哪一节、哪个脚本、怎么从输出里读（find，正则表达式）、每种设备容差多少、为什么是它、对不上通常怪谁。
别的语言、别的框架的实现，也可以拿它来核对。
"""

import contextlib
import io
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import unicodedata
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from chinese_cli import ChineseParser
from find_data import find_data

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).with_name("golden.json")
CHAPTERS = ["ch02", "ch03", "ch04", "ch05", "ch06", "ch07", "appendix-A"]
# 缺了什么，运行哪一条命令就有了。
GET = {
    "the-verdict.txt": "python setup/download.py the-verdict",
    "SMSSpamCollection.tsv": "python setup/download.py sms-spam",
    "instruction-data.json": "python setup/download.py instruction-data",
    "gpt2-124M.safetensors": "python setup/download.py gpt2-124M",
    "gpt2-124M.pth": "python ch05/main/gpt_download.py",
    "gpt2-355M.pth": "python ch05/main/gpt_download.py --size 355M",
    "gpt_mini.pth": "python ch05/main/gpt_train.py",
}


def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。

    参数:
        claim (str): 应当成立的事，例如"每行之和为 1"
        ok (bool): 这次运行里它成立吗
        hint (str): 不成立时，最常见的原因

    返回:
        bool: 原样返回 ok

    示例:
        >>> confirm("1 + 1 = 2", 1 + 1 == 2, "数学不存在了")
          ✓ 1 + 1 = 2
        True
    """
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


def missing(need):
    """这一项数据或权重，本机有没有？

    参数:
        need (str): 文件名；几个里有一个就行时，用 | 隔开

    返回:
        str 或 None: 没有时，是第一个名字；有就是 None
    """
    names = need.split("|")
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # 缺的，最后一起说
            find_data(*names)
    except SystemExit:
        return names[0]
    return None


def numbers(text):
    """文字里的数，按次序；-inf 不算，163,009,536 是一个数。

    参数:
        text (str): 例如打印出来的张量

    返回:
        list[float]: 其中的数

    示例:
        >>> numbers("tensor([[0.4656, -inf], [1., 7e-05]]) 163,009,536")
        [0.4656, 1.0, 7e-05, 163009536.0]
    """
    return [float(number.replace(",", "")) for number in re.findall(r"-?\d+(?:,\d{3})*(?:\.\d*)?(?:e[-+]?\d+)?", text)]


def read(entry, output):
    """从脚本的输出里读出这个数。

    参数:
        entry (dict): golden.json 的一项；find 里的每个括号取出一段
        output (str): 脚本的输出

    返回:
        str、list[float] 或 None: 要的是文字就给文字（连续的空白算一个空格），否则给数；没找到是 None
    """
    found = re.search(entry["find"], output, flags=re.DOTALL | re.MULTILINE)
    if not found:
        return None
    text = " ".join(found.groups())
    return " ".join(text.split()) if isinstance(entry["value"], str) else numbers(text)


def matches(entry, got, device):
    """读出来的与应有的，在这种设备的容差之内吗？

    参数:
        entry (dict): golden.json 的一项
        got (str 或 list[float]): read 的结果
        device (str): cpu、mps 或 cuda

    返回:
        bool: 相符
    """
    if isinstance(entry["value"], str):
        return got == " ".join(entry["value"].split())
    value = entry["value"] if isinstance(entry["value"], list) else [entry["value"]]
    # 1e-12：0.1 + 0.2 这样的二进制零头，不能算差。
    return len(got) == len(value) and all(abs(a - b) <= entry["tolerance"][device] + 1e-12 for a, b in zip(got, value))


def run_script(script, args, device, threads):
    """在子进程里跑一个脚本。

    参数:
        script (str): 脚本，相对于项目文件夹
        args (list[str]): 它的参数；{device} 换成设备，{tmp} 换成临时文件夹，免得覆盖你训练好的模型
        device (str): 设备
        threads (int): 用几个线程

    返回:
        dict: script、args、seconds、output、error（没跑完时，报错的最后一行）、passed 和 failed（它自己的 ✓ 和 ✗ 各是哪些行）
    """
    env = os.environ | {"PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": str(threads), "MPLBACKEND": "Agg"}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as tmp:
        command = [sys.executable, str(ROOT / script), *(arg.replace("{device}", device).replace("{tmp}", tmp) for arg in args)]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, encoding="utf-8", errors="replace", stdin=subprocess.DEVNULL)
    lines = [line.strip() for line in re.split(r"[\r\n]+", done.stderr) if line.strip()]  # 进度条用 \r 换行
    return {
        "script": script,
        "args": args,
        "seconds": time.perf_counter() - start,
        "output": done.stdout,
        "error": None if done.returncode == 0 else lines[-1] if lines else f"退出码 {done.returncode}，没有留下报错（内存不够时，系统会直接结束它）",
        "passed": re.findall(r"^  ✓ (.+)$", done.stdout, flags=re.MULTILINE),
        "failed": re.findall(r"^  ✗ (.+)$", done.stdout, flags=re.MULTILINE),
    }


def pad(text, width):
    """补空格，直到占满 width 个半角格；一个汉字占两格，str.ljust 不知道这一点。

    参数:
        text (str): 文字
        width (int): 占几格

    返回:
        str: 补好的文字
    """
    return text + " " * (width - sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text))


def show(value):
    """把值写短：一长串只写开头。

    参数:
        value (str、list、数或 None): 应有的或得到的

    返回:
        str: 不超过三十几个字符
    """
    if value is None:
        return "没有印出来"
    if isinstance(value, str):
        return value if len(value) <= 36 else value[:35] + "…"
    several = value if isinstance(value, list) else [value]
    texts = [f"{x:,.0f}" if abs(x) >= 1e6 else f"{x:.6g}" for x in several]
    short = " ".join(texts[:3]) + (f" …共 {len(texts)} 个" if len(texts) > 3 else "")
    return short or "一个数也没有"


def difference(result):
    """对不上的一串数，从第几个起不同；看开头的几个往往看不出来。

    参数:
        result (dict): check 的一个结果

    返回:
        str: 一句话；不是一串数，或一个也没有时，是空的
    """
    value, got = result["value"], result["got"]
    if not isinstance(value, list) or not got:
        return ""
    if len(value) != len(got):
        return f"应有 {len(value)} 个数，得到 {len(got)} 个　"
    place = max(range(len(value)), key=lambda i: abs(value[i] - got[i]))
    return f"差得最多的是第 {place + 1} 个：应为 {value[place]:,.6g}，得到 {got[place]:,.6g}　"


def check(entries, device, jobs):
    """跑脚本、逐个核对，边跑边打印进度。

    参数:
        entries (list[dict]): 要核对的数
        device (str): 设备
        jobs (int): 同时跑几个脚本

    返回:
        tuple[list[dict], list[dict]]: 每个数的结果（id、value、got、ok 等）；每个脚本的结果（run_script 的返回，去掉 output）
    """
    commands = list(dict.fromkeys((entry["script"], tuple(entry["args"])) for entry in entries))  # 去重，次序不变
    threads = max(1, (os.cpu_count() or 1) // jobs)
    runs = {}
    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(run_script, script, list(args), device, threads) for script, args in commands]
        try:
            for number, future in enumerate(as_completed(waiting), start=1):
                run = future.result()
                runs[run["script"], tuple(run["args"])] = run
                marks = f"没有跑完：{run['error']}" if run["error"] else f"自查 {len(run['passed'])} ✓" + (f" {len(run['failed'])} ✗" if run["failed"] else "")
                print(f"[{number:2}/{len(commands)}] {run['seconds']:5.1f} 秒　{run['script']}　{marks}", flush=True)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    results = []
    for entry in entries:
        run = runs[entry["script"], tuple(entry["args"])]
        got = read(entry, run["output"])
        # 不认 --device 的脚本总在 CPU 上算，用 CPU 的容差。
        where = device if "{device}" in entry["args"] else "cpu"
        results.append({key: entry[key] for key in ("id", "section", "script", "what", "value", "causes")} | {"got": got, "device": where, "ok": got is not None and matches(entry, got, where)})
    return results, [{key: value for key, value in runs[command].items() if key != "output"} for command in commands]


def print_report(results, scripts):
    """打印表格：每个数一行，✗ 的下面写常见原因；然后是没跑完的脚本、脚本自己的 ✗。

    参数:
        results (list[dict]): check 的第一个结果
        scripts (list[dict]): check 的第二个结果
    """
    chapter = None
    for result in results:
        if result["script"].split("/")[0] != chapter:
            chapter = result["script"].split("/")[0]
            print(f"\n{chapter}\n    {pad('编号', 8)}{pad('应为', 42)}{pad('得到', 42)}是什么")
        print(f"  {'✓' if result['ok'] else '✗'} {pad(result['id'], 8)}{pad(show(result['value']), 42)}{pad(show(result['got']), 42)}{result['section']}　{result['what']}")
        if not result["ok"]:
            print(f"      {difference(result)}常见原因：{result['causes']}（{result['script']}）")
    broken = [script for script in scripts if script["error"] or script["failed"]]
    if broken:
        print("\n没有跑完的脚本，和脚本自己的 ✗")
        for script in broken:
            for line in [f"没有跑完：{script['error']}"] * bool(script["error"]) + script["failed"]:
                print(f"  ✗ {' '.join([script['script'], *script['args']])}\n      {line}")


def main():
    """跑各章的脚本，与 golden.json 逐个核对。"""
    parser = ChineseParser("跑各章的脚本，把印出来的数与 setup/golden.json 逐个核对；有 ✗ 时退出码是 1")
    parser.add_argument("chapters", nargs="*", metavar="章", help=f"查哪几章：{'、'.join(CHAPTERS)}（默认：全部）")
    parser.add_argument("--full", action="store_true", help="连很慢的也查：训练 124M 一轮")
    parser.add_argument("--device", default="cpu", choices=["cpu", "mps", "cuda"], help="能选设备的脚本在哪里跑：cpu、mps 或 cuda（默认：cpu，数字与书上逐位相同）")
    parser.add_argument("--json", type=Path, metavar="文件", help="把结果也写成 JSON")
    parser.add_argument("--jobs", type=int, metavar="个数", default=min(2, os.cpu_count() or 1), help="同时跑几个脚本（默认：2，单核机器上是 1）")
    args = parser.parse_args()
    chapters = [chapter.rstrip("/\\") for chapter in args.chapters]  # 按 Tab 补全的是 ch03/
    unknown = [chapter for chapter in chapters if chapter not in CHAPTERS]
    if unknown:
        parser.error(f"不认识的章 {unknown[0]}，可选 {'、'.join(CHAPTERS)}")
    if args.jobs < 1:
        parser.error(f"--jobs 至少是 1，不能是 {args.jobs}")
    if args.json and not args.json.resolve().parent.is_dir():
        parser.error(f"没有文件夹 {args.json.resolve().parent}，写不了 {args.json.name}")
    if args.device != "cpu":
        import torch  # 要用 GPU 才导入：它要一秒多

        if not (torch.backends.mps if args.device == "mps" else torch.cuda).is_available():
            parser.error(f"这台机器上没有可用的 {args.device}；运行 python setup/device_check.py 看原因")

    entries = [entry for entry in json.loads(GOLDEN.read_text(encoding="utf-8"))["numbers"] if not chapters or entry["script"].split("/")[0] in chapters]
    skipped, todo = {}, []
    for entry in entries:
        lacking = next((name for name in map(missing, entry["needs"]) if name), None)
        if lacking:
            skipped.setdefault(f"没有 {lacking}，运行 {GET[lacking]}", []).append(entry["id"])
        elif entry["full"] and not args.full:
            skipped.setdefault("很慢，加上 --full 才查", []).append(entry["id"])
        else:
            todo.append(entry)

    start = time.perf_counter()
    try:
        results, scripts = check(todo, args.device, args.jobs)
    except KeyboardInterrupt:
        print("\n停下了")
        sys.exit(130)
    print_report(results, scripts)
    seconds = time.perf_counter() - start
    passed, wrong = sum(result["ok"] for result in results), sum(not result["ok"] for result in results)
    own, own_wrong = sum(len(script["passed"]) for script in scripts), sum(len(script["failed"]) for script in scripts)
    crashed = sum(script["error"] is not None for script in scripts)
    if skipped:
        print("\n跳过")
        for reason, names in skipped.items():
            print(f"  {len(names):3} 个　{reason}　（{'、'.join(names[:6])}{' 等' if len(names) > 6 else ''}）")
    print(f"\n{len(scripts)} 个脚本，{seconds:.0f} 秒　书上的数 {passed} ✓ {wrong} ✗，跳过 {sum(map(len, skipped.values()))} 个　脚本自己的检查 {own} ✓ {own_wrong} ✗" + (f"　没有跑完 {crashed} 个" if crashed else ""))
    if args.json:
        try:
            torch_version = version("torch")
        except PackageNotFoundError:
            torch_version = None
        about = {"python": platform.python_version(), "torch": torch_version, "system": platform.platform(), "device": args.device, "seconds": round(seconds, 1)}
        content = about | {"numbers": results, "skipped": skipped, "scripts": scripts}
        part = args.json.with_name(args.json.name + ".part")
        try:
            part.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            os.replace(part, args.json)
        except OSError as error:
            parser.error(f"写不了 {args.json}：{error.strerror}")
        print(f"结果　{args.json}")
    sys.exit(1 if wrong or own_wrong or crashed else 0)


if __name__ == "__main__":
    main()
