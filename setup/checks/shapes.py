"""查形状：把脚本真的跑一遍，每条形状注释都与活的张量比一比

写着 `# (b, t, d)` 的那一行，得到的真是这个形状吗？同一次调用里，处处的 t 是同一个数吗？k 真是 d / h 吗？文档里的 形状、参数、返回 也查。

怎么看见张量：在语法树里给写了注释的表达式套一层 look__(…)，它记下形状，把值原样交还；脚本的代码、行号、随机数都不变。
用 sys.settrace 也能停在每一行，但只看得见变量，看不见链式调用的半路、推导式的每一项、append 的参数，还会拖慢整个脚本。
在临时的小项目里跑，读者的 outputs/ 不受影响；那里的 mini 和 124M 都缩小了，所以第 5–7 章的注释写字母，不写 768 这样的数。没跑到的注释不算查过，如实报数。

规则：同一次调用里，每个字母只能是一个数；有同名的整数变量，就必须等于它；详见 shape_scope.py。
    4d、b·t、t + 1 是算式；… 是任意几维；(n,) 或 () 是两者之一；(t, d) = (6, 3) 是两者都对；(b, t)，(b,) 是两个张量；A → B 是变形前后。

运行：
    python setup/checks/shapes.py                   # 所有脚本，约 8 分钟；有错退出码 1
    python setup/checks/shapes.py --changed         # 只查上次查过之后改了的
    python setup/checks/shapes.py 某个脚本.py       # 只查这一个（可以写多个）
    python setup/checks/shapes.py --fix             # 再印出建议的注释（只印，不改文件）
    python setup/checks/shapes.py --verbose         # 再列出没跑到的注释
    python setup/checks/shapes.py --jobs 1          # 同时跑几个脚本（默认：几个核就几个）
"""

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import types
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent))  # 测试按路径导入这个文件时，也找得到旁边的几个
import comments
from shape_planter import Planter
from shape_scope import Scope, relations, shapes_of

ROOT = comments.ROOT
RECORDS = Path(__file__).with_suffix(".json")  # 每个脚本查过的是哪一版：改了一个字，就要重查，测试会点名
TIME = re.compile(r"^ +约 .* 核 CPU）.*\n", re.MULTILINE)  # 重新量过的用时不算改
# 脚本里写着左边的，运行时就加上右边的参数：少做一点，只用 CPU，走到更多分支。
ARGUMENTS = {'"--quick"': ["--quick"], '"--device"': ["--device", "cpu"], "choices=SIZES": ["--size", "124M"], "choices=GPT2_SETTINGS": ["--size", "124M"]}
ARGUMENTS |= {'"--temperature", type': ["--temperature", "1"], '"--top-k", type': ["--top-k", "5"]}
# 小项目里的模型都缩小：mini 缩成 48 维，GPT-2 124M 缩成 60 维，再随机造一份它的权重，装权重的代码才走得到。
SHRINK = [
    (r'"emb_dim": 192\b', '"emb_dim": 48'), (r'"n_heads": 6\b', '"n_heads": 3'), (r'"n_layers": 4\b', '"n_layers": 2'),
    (r'"emb_dim": 768\b', '"emb_dim": 60'), (r'"n_heads": 12\b', '"n_heads": 5'), (r'"n_layers": 12\b', '"n_layers": 2'),
    (r'"n_embd": 768, "n_head": 12, "n_layer": 12\b', '"n_embd": 60, "n_head": 5, "n_layer": 2'),
    (r"max_new_tokens=256\b", "max_new_tokens=16"),
]  # fmt: skip
AFTER = {
    "ch06/main/example_06_classify_review.py": ["ch06/main/example_05_finetune_classifier.py"],
    "ch07/main/example_05_responses.py": ["ch07/main/example_04_finetune.py"],
    "ch07/main/example_06_scores.py": ["ch07/main/example_04_finetune.py", "ch07/main/example_05_responses.py"],
}
WEIGHTS = """
import torch
from safetensors.torch import save_file
d, tensors = 60, {"wte.weight": torch.randn(50257, 60), "wpe.weight": torch.randn(1024, 60), "ln_f.weight": torch.randn(60), "ln_f.bias": torch.randn(60)}
for i in range(2):
    for name, shape in {"ln_1": (d,), "attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d), "ln_2": (d,), "mlp.c_fc": (d, 4 * d), "mlp.c_proj": (4 * d, d)}.items():
        tensors |= {f"h.{i}.{name}.weight": torch.randn(shape), f"h.{i}.{name}.bias": torch.randn(shape[-1])}
save_file({name: tensor * 0.1 for name, tensor in tensors.items()}, "setup/downloads/gpt2-124M.safetensors")
"""


def run_inside(script, report, arguments):
    """在这个进程里运行一个脚本，把结果写成 JSON。

    参数:
        script (Path): 临时小项目里的脚本
        report (Path): 结果写到哪里
        arguments (list[str]): 脚本的命令行参数
    """
    planter = Planter(comments.read(script))
    tree = planter.plant()
    this = SimpleNamespace(relations=relations(ast.get_docstring(tree) or ""), lies={}, made={})
    entries = {function.lineno: claims for function, claims in planter.entry.items()}

    def look(scope, number, value):
        claim = planter.claims[number]
        scope.leave(claim.depth + (not claim.fresh))  # 推导式的每一项各算各的；走出推导式，里面定的就作废
        scope.compare(claim, value, sys._getframe(1).f_locals)
        return value

    def enter(line, local):
        scope = Scope(this, local)
        if sys._getframe(1).f_code.co_name == "__init__" and hasattr(local.get("self"), "__weakref__"):  # 建立时的参数，如 layer_sizes，forward 的形状里也会写到
            numbers = {name: value for name, value in local.items() if type(value) is int or isinstance(value, (list, tuple, dict))}
            this.made[id(local["self"])] = (weakref.ref(local["self"]), scope.made | numbers)
        for name, claim in entries.get(line, []):
            value = local.get(name) if name else next((value for value in local.values() if shapes_of(value)), None)
            if shapes_of(value):
                scope.compare(claim, value, local)
        return scope

    module = types.ModuleType("__main__")
    module.__dict__.update(__file__=str(script), look__=look, enter__=enter)
    module.scope__ = Scope(this, module.__dict__, top=True)
    sys.modules["__main__"], sys.argv, sys.path[0] = module, [str(script), *arguments], str(script.parent)
    code = 0
    try:
        exec(compile(tree, str(script), "exec"), module.__dict__)
    except SystemExit as error:
        code = error.code or 0
    except BaseException:  # 出错之前比过的也要写下来
        traceback.print_exc()
        code = 1
    sites = [site for site in planter.sites.values() if site.looked or not site.isnt]
    result = {"checked": [site.line for site in sites if site.looked], "looks": sum(site.looked for site in sites), "lies": this.lies}
    result["unreached"] = [[site.line, site.text] for site in sites if not site.looked]
    report.write_text(json.dumps(result), encoding="utf-8")
    sys.exit(code)


def make_project(folder, train=True):
    """造一个临时的小项目：脚本、自带的数据、LLM_DATA_DIR 里的数据（权重不要），再给第 5–7 章造两份缩小的权重当起点。

    参数:
        folder (Path): 造在哪里
        train (bool): 要不要造权重

    返回:
        Path: 就是 folder

    异常:
        RuntimeError: 权重没有造成
    """
    (folder / "setup" / "downloads").mkdir(parents=True)
    book = Path(os.environ.get("LLM_DATA_DIR") or ROOT / "setup" / "downloads")
    for path in [*comments.scripts(), *(ROOT / "setup" / "data").iterdir(), *(book.iterdir() if book.is_dir() else [])]:
        if path.is_file() and path.stat().st_size < 2_000_000:
            copy_script(path, folder, folder / "setup" / "downloads" if path.parent == book else None)
    shutil.copytree(ROOT / "setup" / "downloads" / "tiktoken", folder / "setup" / "downloads" / "tiktoken")
    smollm2 = Path("ch05", "outputs", "smollm2-135M.pth")  # 真正的聊天模型：半个 GB，不抄，指过去
    if (ROOT / smollm2).is_file():
        (folder / smollm2).parent.mkdir(parents=True, exist_ok=True)
        (folder / smollm2).symlink_to(ROOT / smollm2)
    if train:
        for command in (["ch05/main/gpt_train.py", "--epochs", "1", "--device", "cpu"], ["-c", WEIGHTS], ["ch05/main/gpt_download.py", "--size", "124M"]):
            done = run(command, folder)
            if done.returncode:
                raise RuntimeError(f"没有造成权重：{done.stderr}")
            if "--epochs" in command:  # 换了轮数，gpt_train.py 就另存一个名字
                os.replace(folder / "ch05" / "outputs" / "gpt_mini_1.pth", folder / "ch05" / "outputs" / "gpt_mini.pth")
    return folder


def copy_script(path, project, folder=None):
    """把一个文件拷进小项目，模型缩小。

    参数:
        path (Path): 原来的文件
        project (Path): 小项目
        folder (Path): 拷到这里；没有写就是原来的相对位置

    返回:
        Path: 拷到了哪里
    """
    copied = folder / path.name if folder else project / (path.relative_to(ROOT) if path.is_relative_to(ROOT) else Path("ch00", *path.parts[-2:]))
    copied.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix not in (".py", ".txt"):
        shutil.copyfile(path, copied)
        return copied
    text = path.read_text(encoding="utf-8-sig")
    if re.match(r"ch0[567]", copied.relative_to(project).as_posix()) and "LLAMA2_CONFIG_7B" not in text:  # Llama 的建在 meta 上，不必缩小
        for old, new in SHRINK:
            text = re.sub(old, new, text)
    copied.write_text(text if path.suffix == ".py" else text[:14000], encoding="utf-8")  # 短篇只用开头，训练快一些
    return copied


def run(command, project):
    """在小项目里运行一条 Python 命令。

    参数:
        command (list): 脚本和参数
        project (Path): 小项目

    返回:
        subprocess.CompletedProcess: 结果
    """
    environment = {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"} | os.environ | {"PYTHONIOENCODING": "utf-8", "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("LLM_DATA_DIR", None)  # 里面的数据已经拷来了；权重太大，用缩小的
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, encoding="utf-8", errors="replace", timeout=900)


def examine(path, project):
    """查一个脚本。

    参数:
        path (Path): 脚本
        project (Path): 小项目

    返回:
        dict: checked 查过的行、unreached 没跑到的、lies 不对的、looks 比了几次、problems 写成一行的问题、fixes 建议
    """
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    result = {"checked": [], "unreached": [], "lies": {}, "looks": 0, "seconds": 0.0, "problems": [], "fixes": []}
    try:
        source = comments.read(path)
    except SyntaxError as error:
        return result | {"problems": [f"{name}:{error.lineno or 1}　Python 读不懂这个文件，先让它能运行"]}
    if Planter(source).sites:
        script, started = copy_script(path, project), time.time()
        handle, report = tempfile.mkstemp(suffix=".json", dir=project)
        os.close(handle)
        text = script.read_text(encoding="utf-8")
        arguments = [word for mark, words in ARGUMENTS.items() if mark in text for word in words]
        try:
            done = run([Path(__file__).resolve(), "--inside", script, report, *arguments], project)
        except subprocess.TimeoutExpired:
            done = subprocess.CompletedProcess([], 124, stderr="15 分钟还没有跑完")
        if done.returncode:
            last = (done.stderr.strip() or "没有说原因").splitlines()[-1]
            result["problems"].append(f"{name}:1　脚本没有跑完（退出码 {done.returncode}）：{last}")
        if text := Path(report).read_text(encoding="utf-8"):
            result |= json.loads(text)
        result["seconds"] = time.time() - started
    for line, lie in sorted(result["lies"].items(), key=lambda item: int(item[0])):
        result["problems"].append(f"{name}:{line}　写着 {lie['old']}　实际是 {lie['real'] or '—'}　{lie['reason']}")
        result["fixes"] += [f"{name}:{line}\n  - {lie['old']}\n  + {lie['new']}"] * (lie["old"] != lie["new"])
    result["problems"] += [f"{name}:{line}　{text}" for line, _, text in comments.check_shapes(source)]
    return result


def digest(path):
    """脚本的摘要，用时那一行不算。

    参数:
        path (Path): 脚本

    返回:
        str: 12 位十六进制
    """
    return hashlib.sha256(TIME.sub("", path.read_text(encoding="utf-8")).encode()).hexdigest()[:12]


def records():
    """查过的记录：脚本 → 摘要、查过几条、没有跑到几条。"""
    return json.loads(RECORDS.read_text(encoding="utf-8")) if RECORDS.is_file() else {}


def record(results):
    """没有问题的，记下查的是哪一版；已经没有的脚本，去掉。

    参数:
        results (dict): 脚本 → examine 的结果
    """
    known = {name: entry for name, entry in records().items() if (ROOT / name).is_file()}
    for path, result in results.items():
        if path.is_relative_to(ROOT) and not result["problems"]:
            known[path.relative_to(ROOT).as_posix()] = {"digest": digest(path), "checked": len(result["checked"]), "unreached": len(result["unreached"])}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in sorted(known.items()))
    part = RECORDS.with_suffix(".part")
    part.write_text("{\n" + lines + "\n}\n", encoding="utf-8")
    os.replace(part, RECORDS)


def stale():
    """改过之后没有再查的脚本。

    返回:
        list[Path]: 没有记录的，和摘要不同的
    """
    known = records()
    return [path for path in comments.scripts() if "setup" not in path.parts and known.get(path.relative_to(ROOT).as_posix(), {}).get("digest") != digest(path)]


def main():
    """命令行：不带参数检查所有章节的脚本，也可以给出几个文件。"""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")
    words = sys.argv[1:]
    if words[:1] == ["--inside"]:
        return run_inside(Path(words[1]), Path(words[2]), words[3:])
    jobs = os.cpu_count() or 1
    if "--jobs" in words:
        at = words.index("--jobs")
        jobs, words = int(words[at + 1]) if words[at + 1 : at + 2] and words[at + 1].isdigit() else 0, words[:at] + words[at + 2 :]
    options = {word for word in words if word.startswith("-")}
    paths = [Path(word).resolve() for word in words if word not in options]
    if not paths:
        paths = stale() if "--changed" in options else [path for path in comments.scripts() if "setup" not in path.parts]
    wrong = sorted(options - {"--fix", "--verbose", "--changed", "-h", "--help"}) + ["--jobs"] * (jobs < 1)
    wrong += [str(path) for path in paths if path.suffix != ".py" or not path.is_file()]
    if wrong:
        print(f"出错了：看不懂 {wrong[0]}，用法：shapes.py [--changed] [--fix] [--verbose] [--jobs 几] [已有的 .py 文件…]", file=sys.stderr)
        sys.exit(2)
    if options & {"-h", "--help"}:
        return print(__doc__)
    started = time.time()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        texts = [re.sub("# region 沿用 setup.*?# endregion", "", path.read_text(encoding="utf-8"), flags=re.DOTALL) for path in paths]
        project = make_project(Path(folder), train=any(re.search(r"gpt_mini|gpt2-|124M\.pth", text) for text in texts))
        wanted = [first for later, firsts in AFTER.items() if any(path.as_posix().endswith(later) for path in paths) for first in firsts]
        for first in dict.fromkeys(wanted):  # 有的脚本要用另一个脚本存下的模型和回答
            run([first], project)
        results = list(pool.map(lambda path: examine(path, project), paths))
    record(dict(zip(paths, results)))
    for path, result in zip(paths, results):
        name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        print("".join(f"{line}\n" for line in result["problems"] + result["fixes"] * ("--fix" in options)), end="")
        if "--verbose" in options:
            print(f"{name}　查过 {len(result['checked'])} 条，{result['seconds']:.1f} 秒")
            print("".join(f"{name}:{line}　没有跑到　{text}\n" for line, text in result["unreached"]), end="")
    problems = sum(len(result["problems"]) for result in results)
    checked, looks, unreached = (sum(result[key] if key == "looks" else len(result[key]) for result in results) for key in ("checked", "looks", "unreached"))
    print(f"{len(paths)} 个脚本：查过 {checked} 条形状注释（比了 {looks:,} 次），{unreached} 条没有跑到，{problems} 处不对，{time.time() - started:.0f} 秒")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
