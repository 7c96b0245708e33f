"""给测试用：在随机的时刻 kill -9 清理、切词元、训练，再运行同一条命令，看结果是否与没断过逐位相同，有没有留下写错的文件。

用法：python corpus_kill_trials.py 工作文件夹 语料杀几次 训练杀几次 [多进程杀几次]
先导入一次脚本，再一次次 fork 出子进程：省去每次导入的几秒；多进程的从命令行启动。最后一行打印 JSON。
"""

import hashlib
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import torch

SCRIPTS = Path(__file__).resolve().parents[1] / "experiments"
TINY = {"context_length": 32, "emb_dim": 16, "n_heads": 2, "n_kv_groups": 2, "head_dim": 8, "n_layers": 1, "hidden_dim": 32}


def load(name):
    """按路径导入一个实验。"""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_texts(folder):
    """一份不大不小的语料：十几个文件，各种编码，有重复的，有几乎一样的。"""
    rng = random.Random(7)
    words = ["river", "stone", "light", "garden", "window", "morning", "letter", "captain", "silver", "quiet", "horse", "market", "song", "winter", "bread"]
    folder.mkdir(parents=True)
    for number in range(14):
        paragraphs = [" ".join(rng.choices(words, k=60)).capitalize() + "." for _ in range(30)]
        text = "\n\n".join(paragraphs)
        encoding = "utf-16" if number == 3 else "utf-8"
        (folder / f"text{number:02}.{'md' if number % 3 else 'txt'}").write_bytes(text.encode(encoding))
        if number % 5 == 0:
            (folder / f"again{number:02}.txt").write_bytes(text.replace("river", "rivers", 2).encode())
    (folder / "chinese.txt").write_bytes(("春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。\n" * 20).encode("gb18030"))


def start(module, log, *args, before=None):
    """fork 出一个子进程去运行 module.main()，返回进程号。"""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        if before:
            before()
        sys.argv = [module.__name__, *map(str, args)]
        module.main()
        code = 0
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def finish(pid):
    """等子进程结束；返回退出码，被信号杀死则是负的信号编号。"""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def listing(folder):
    """文件夹里每个文件的名字和摘要。"""
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}


def small(modules):
    """活分小一点，模型缩小，步数少一点：一次运行不到一秒，一行逻辑也不改。"""
    clean, prepare, pretrain = modules
    clean.BLOCK_BYTES = 20_000
    clean.DOC_CHARS = 1000
    pretrain.TINY = pretrain.CONFIG | TINY
    pretrain.EVAL_TOKENS = 512
    pretrain.draw = lambda *args: None  # 画图占去大半的时间，又不影响别的
    real = pretrain.say
    pretrain.say = lambda model, vocab, prompt, device, count=8: real(model, vocab, prompt, device, 8)
    return modules


def corpus_trials(clean, prepare, folder, kills, rng):
    """清理、切词元，两步连着做，随机杀；每做成一份，与没断过的比。"""
    texts, log = folder / "texts", folder / "corpus.log"
    write_texts(texts)
    steps = [(clean, ["--input", texts, "--workers", 1, "--out"]), (prepare, ["--vocab", 400, "--held-out", 100, "--workers", 1, "--corpus"])]
    whole, seconds = folder / "whole", []
    for module, args in steps:
        began = time.monotonic()
        assert finish(start(module, log, *args, whole)) == 0, log.read_text(encoding="utf-8")
        seconds.append(time.monotonic() - began)
    expected, done, parts, made, wrong = listing(whole), 0, 0, 0, []
    while done < kills:
        out = folder / f"corpus{made}"
        for step, (module, args) in enumerate(steps):
            for attempt in range(40):
                pid = start(module, log, *args, out)
                if attempt < 3 and done < kills:
                    time.sleep(rng.uniform(0.02, 0.9) * seconds[step])
                    os.kill(pid, signal.SIGKILL)
                code = finish(pid)
                parts += len(list(out.rglob("*.part")))
                # 名字正式的分片，任何时刻都必须是写完的
                for path in out.glob("*_*.bin"):
                    if hashlib.sha256(path.read_bytes()).hexdigest() != expected[path.name]:
                        wrong.append(path.name)
                if code == 0:
                    break
                done += code == -signal.SIGKILL
        if listing(out) != expected:
            wrong.append(f"第 {made} 份不同")
        made += 1
    return {"杀死": done, "正在写": parts, "做成": made, "错": wrong}, whole


def pool_trials(folder, kills, rng):
    """几个进程一起做的时候杀死主进程：工作进程也要跟着退出，接着做出来的与一个进程做的相同。"""
    texts, wrong, done, left = folder / "texts", [], 0, 0
    commands = [[sys.executable, SCRIPTS / "exp_corpus_clean.py", "--input", texts, "--workers", 2, "--out"], [sys.executable, SCRIPTS / "exp_corpus_prepare.py", "--vocab", 400, "--held-out", 100, "--workers", 2, "--corpus"]]
    one, two = folder / "one", folder / "two"
    for command in commands:
        arguments = [str(part) for part in command]
        arguments[arguments.index("--workers") + 1] = "1"
        subprocess.run([*arguments, str(one)], check=True, stdout=subprocess.DEVNULL)
    for step, command in enumerate(commands):
        for _ in range(kills):
            process = subprocess.Popen([*map(str, command), str(two)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(rng.uniform(0.3, 1.6))
            process.kill()
            done += process.wait() == -signal.SIGKILL
            for _ in range(50):
                time.sleep(0.1)
                found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
                if not found:
                    break
            left += len(found)
        subprocess.run([*map(str, command), str(two)], check=True, stdout=subprocess.DEVNULL)
    wrong += ["不同"] if listing(one) != listing(two) else []
    return {"杀死": done, "没有退出的": left, "错": wrong}


def flatten(value, name=""):
    """把嵌套的字典、列表摊平成 (名字, 值)。"""
    if isinstance(value, dict):
        return [item for key in value for item in flatten(value[key], f"{name}.{key}")]
    if isinstance(value, (list, tuple)):
        return [item for number, inner in enumerate(value) for item in flatten(inner, f"{name}.{number}")]
    return [(name, value)]


def differences(one, other):
    """两份检查点里逐位不同的项；用了几秒不算。"""
    one, other = [[pair for pair in flatten(content) if "seconds" not in pair[0]] for content in (one, other)]
    if [name for name, _ in one] != [name for name, _ in other]:
        return ["项目不一样"]
    return [name for (name, a), (_, b) in zip(one, other) if not (torch.equal(a, b) if torch.is_tensor(a) else a == b)]


def log_rows(path):
    """日志，去掉用了几秒。"""
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in path.read_text(encoding="utf-8").splitlines()]


def train_trials(pretrain, corpus, folder, kills, rng):
    """训练随机杀；检查点任何时刻都读得出来，最后的权重、优化器、日志都与没断过的相同。"""
    log = folder / "train.log"
    args = ["--quick", "--corpus", corpus, "--steps", 30, "--batch-size", 2, "--accumulate", 2, "--eval-every", 5, "--precision", "fp32", "--device", "cpu", "--save-every", 0, "--out"]
    whole, began = folder / "run", time.monotonic()
    assert finish(start(pretrain, log, *args, whole)) == 0, log.read_text(encoding="utf-8")
    seconds = time.monotonic() - began
    name = f"pretrain_{corpus.name}"
    expected, rows = pretrain.load_checkpoint(whole / f"{name}.pth"), log_rows(whole / f"{name}.jsonl")
    done, parts, made, wrong = 0, 0, 0, []
    while done < kills:
        out = folder / f"run{made}"
        for attempt in range(40):
            pid = start(pretrain, log, *args, out)
            if attempt < 5 and done < kills:
                time.sleep(rng.uniform(0.02, 0.7) * seconds)
                os.kill(pid, signal.SIGKILL)
            code = finish(pid)
            parts += len(list(out.glob("*.part")))
            if (out / f"{name}.pth").exists():
                pretrain.load_checkpoint(out / f"{name}.pth")
            if code == 0:
                break
            done += code == -signal.SIGKILL
        different = differences(expected, pretrain.load_checkpoint(out / f"{name}.pth"))
        if code or different or log_rows(out / f"{name}.jsonl") != rows or list(out.glob("*.part")):
            wrong.append({"退出码": code, "不同": different[:5]})
        made += 1
    return {"杀死": done, "正在写": parts, "做成": made, "错": wrong}


def main():
    """几种试验，各杀几次。"""
    folder, corpus_kills, train_kills = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    rng = random.Random(5)
    modules = small([load(f"exp_{name}") for name in ("corpus_clean", "corpus_prepare", "pretrain_corpus")])
    import datasketch  # noqa: F401　在 fork 之前导入

    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # 第一次建优化器要导入近两秒的东西
    results = {}
    results["语料"], corpus = corpus_trials(*modules[:2], folder, corpus_kills, rng)
    results["训练"] = train_trials(modules[2], corpus, folder, train_kills, rng)
    if len(sys.argv) > 4:
        results["多进程"] = pool_trials(folder, int(sys.argv[4]), rng)
    print(json.dumps(results, ensure_ascii=False))


if __name__ == "__main__":
    main()
