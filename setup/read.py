"""边读边看：把整本书变成一个网站，左边说明，右边代码，下面是真的输出和图

网站由脚本直接生成，没有第二份文字要照顾；不联网也能看，双击 setup/site/index.html 就行。
里面的输出是真的跑出来的，记在 setup/read_records/ 里；脚本改过、还没有重录的，页面上会写明，不会拿旧的充数。

运行：
    python -m pip install -r setup/requirements-read.txt     # 只装一次
    python setup/read.py                            # 生成 setup/site/，在浏览器里打开
    python setup/read.py --no-open                  # 只生成
    python setup/read.py --serve                    # 生成之后在本机开一个网址（手机上看，用同一个 Wi-Fi 的话加 --host 0.0.0.0）
    python setup/read.py --out 文件夹               # 生成到别处，用来发布
    python setup/read.py --run ch03/main/example_03_causal_attention.py     # 重录几个脚本的输出、图和形状
    python setup/read.py --run touch/bpe            # 重算一个动手的页面用的数
    python setup/read.py --run                      # 重录、重算所有旧了的和没有的（实验只录点名的）
    生成全部约 15 秒，0.3 GB（2 核 CPU）
"""

import os
import shutil
import sys
import tempfile
import webbrowser
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent / "read_site"), str(Path(__file__).resolve().parent)]
from chinese_cli import ChineseParser

import record
import touch

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = "python -m pip install -r setup/requirements-read.txt"


def need():
    """导入画页面的模块；没有装它要的包，就抛出一句说清怎么装的话。

    返回:
        module: render

    异常:
        ValueError: 少了包
    """
    try:
        import render
    except ModuleNotFoundError as error:
        raise ValueError(f"要先装 {error.name} 这个包：{PACKAGES}") from None
    return render


SITE = None  # 每个进程各有一份


def start(names):
    """每个进程开始时建一份网站。

    参数:
        names (list[str] 或 None): 只画哪些脚本
    """
    global SITE
    SITE = need().Site([ROOT / name for name in names] if names else None)


def draw(name):
    """画一页。

    参数:
        name (str): 脚本或文档

    返回:
        tuple: 网址、整页 HTML、搜索用的各节、哪里坏了
    """
    if name.endswith(".py"):
        return SITE.pages[name], *SITE.script(name)
    if name.startswith("touch/"):
        return f"{name}.html", *SITE.touch(name.removeprefix("touch/"))
    return SITE.docs[name], *SITE.doc(name), ""


def build(out, names=None, jobs=None):
    """生成网站。先写到旁边的临时文件夹，全部写好再换上去。

    参数:
        out (Path): 网站放在哪里
        names (list[str] 或 None): 只画哪些脚本；None 表示全部
        jobs (int 或 None): 几个进程；None 表示几个核就几个，1 表示不开别的进程

    返回:
        list[str]: 没有画成的脚本，和原因

    异常:
        ValueError: 少了包，或 out 是一个放着别的东西的文件夹
    """
    if out.exists() and any(out.iterdir()) and not (out / "search-data.js").is_file():
        raise ValueError(f"{out} 里有别的东西，不敢覆盖；换一个空文件夹")
    start(names)
    work = [*SITE.names, *SITE.docs, *(f"touch/{page}" for page in SITE.touches)]
    jobs = min(jobs or os.cpu_count() or 1, len(work) // 8 + 1)
    if jobs > 1:
        with ProcessPoolExecutor(jobs, get_context("spawn"), start, (names,)) as pool:
            pages = list(pool.map(draw, work, chunksize=4))
    else:
        pages = [draw(name) for name in work]
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        for url, page, *_ in pages:
            (fresh / url).parent.mkdir(parents=True, exist_ok=True)
            (fresh / url).write_text(page, encoding="utf-8")
        SITE.write_rest(fresh, [entry for _, _, entries, _ in pages for entry in entries])
        fresh.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        os.replace(fresh, out)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return [problem for *_, problem in pages if problem]


def record_scripts(names):
    """重录几个脚本；没有写哪几个，就是 main/ 里所有旧了的和没录过的。

    参数:
        names (list[str]): 脚本，相对当前文件夹或项目根目录

    返回:
        int: 没有录成的有几个

    异常:
        ValueError: 没有这个脚本，或不是章节的脚本
    """
    wanted = []
    for name in names:
        if name.startswith("touch/") and name.removeprefix("touch/") in touch.PAGES:
            wanted.append(name)
            continue
        path = next((path for path in (Path(name).resolve(), ROOT / name) if path.is_file()), None)
        if path is None or path.suffix != ".py" or not path.is_relative_to(ROOT) or path.parent.name not in ("main", "experiments"):
            raise ValueError(f"{name} 不是章节的脚本，也不是动手的页面，例如：--run ch03/main/example_03_causal_attention.py 或 --run touch/bpe")
        wanted.append(path.relative_to(ROOT).as_posix())
    if not names:
        every = [path.relative_to(ROOT).as_posix() for path in sorted([*ROOT.glob("ch0*/main/*.py"), *ROOT.glob("appendix-*/main/*.py")])]
        wanted = [name for name in every if record.load(name, (ROOT / name).read_text(encoding="utf-8")).state != "fresh"]
        wanted += [f"touch/{page}" for page in touch.PAGES if touch.read(page)[0] != "fresh"]
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        project = record.make_project(Path(folder))
        ran = set()
        for name in wanted:
            for needed in [*(first for first in record.AFTER.get(name, []) if first not in ran), name]:
                ran.add(needed)
                try:
                    if needed.startswith("touch/"):
                        print(f"算好了　{needed}　{touch.write(needed.removeprefix('touch/')).stat().st_size:,} 字节", flush=True)
                        continue
                    made = record.run(needed, project)
                    print(f"录好了　{needed}　{made['seconds']} 秒，{sum(map(len, made['cells'].values()))} 段输出和图，{len(made['shapes'])} 个形状", flush=True)
                except RuntimeError as error:
                    failed += 1
                    print(f"没有录成　{error}", file=sys.stderr, flush=True)
    if not wanted:
        print("都是新的，不用重录")
    return failed


def serve(folder, host, port):
    """在本机开一个网址，按 Ctrl+C 结束。

    参数:
        folder (Path): 网站
        host (str): 给谁看；127.0.0.1 是只给自己
        port (int): 端口；0 表示随便挑一个
    """
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer((host, port), handler) as server:
        print(f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{server.server_port}/　按 Ctrl+C 结束", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def main():
    """命令行。"""
    parser = ChineseParser("边读边看：把整本书变成一个网站")
    parser.add_argument("--out", type=Path, default=ROOT / "setup" / "site", help="网站放在哪里（默认：setup/site）")
    parser.add_argument("--no-open", action="store_true", help="生成之后不打开浏览器")
    parser.add_argument("--serve", action="store_true", help="生成之后在本机开一个网址")
    parser.add_argument("--host", default="127.0.0.1", help="给谁看（默认：127.0.0.1，只给自己；0.0.0.0 是同一个网络里的都行）")
    parser.add_argument("--port", type=int, default=8000, help="端口（默认：8000）")
    parser.add_argument("--run", nargs="*", metavar="脚本", help="重录这几个脚本的输出；不写是 main/ 里所有旧了的")
    parser.add_argument("--jobs", type=int, default=None, help="几个进程（默认：几个核就几个）")
    args = parser.parse_args()
    try:
        if args.run is not None:
            sys.exit(1 if record_scripts(args.run) else 0)
        if args.jobs is not None and args.jobs < 1:
            raise ValueError(f"--jobs 至少是 1，不能是 {args.jobs}")
        out = args.out.resolve()
        problems = build(out, jobs=args.jobs)
        for problem in problems:
            print(f"这一页没有画成　{problem}", file=sys.stderr)
        pages = len(list(out.rglob("*.html")))
        print(f"{pages} 页，在 {out}" + (f"；{len(problems)} 页没有画成" if problems else ""))
        if args.serve:
            serve(out, args.host, args.port)
        elif not args.no_open:
            webbrowser.open((out / "index.html").as_uri())
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
