"""给测试用：在各种时刻弄断微调（kill -9、写检查点写到一半、磁盘满），再接着训练，看结果是否与没断过逐位相同。

用法：python kill_trials.py 预训练的权重 短信 工作文件夹
先导入一次 gpt_class_finetune.py，再一次次 fork 出子进程去微调：省去每次导入的几秒。最后一行打印 JSON：每项试验的结果。
"""

import importlib.util
import io
import json
import os
import random
import resource
import signal
import sys
import time
import traceback
from functools import partial
from pathlib import Path

import torch

START, DATA, FOLDER = map(Path, sys.argv[1:4])
NAME = "review_classifier_gpt_tiny.pth"
torch.set_num_threads(1)
torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # 第一次建优化器要导入近两秒的东西，在 fork 之前做掉
spec = importlib.util.spec_from_file_location("finetune", Path(__file__).resolve().parent.parent / "main" / "gpt_class_finetune.py")
finetune = importlib.util.module_from_spec(spec)
spec.loader.exec_module(finetune)
finetune.plot_values = lambda *_: None  # 画图要半秒，另有测试
finetune.EVAL_FREQ = 3  # 每 3 步评估一次，--save-every 0 时每次都存
tokenizer = finetune.load_gpt2_tokenizer()
finetune.load_gpt2_tokenizer = lambda: tokenizer


def start(out, *args, sabotage=None):
    """fork 出一个子进程去微调，返回进程号；报错写到 out 旁边的 .err。"""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(out.with_suffix(".err"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        if sabotage:
            sabotage()
        given = ["--from-file", str(START), "--data", str(DATA), "--out", str(out), "--save-every", "0", "--device", "cpu", "--epochs", "3"]
        sys.argv = ["gpt_class_finetune.py", *given, *args]
        finetune.main()
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


def run(out, *args, sabotage=None):
    return finish(start(out, *args, sabotage=sabotage))


def content(out):
    """检查点的内容；还没有时为 None，读不出来就会抛异常。"""
    return finetune.load_checkpoint(out / NAME) if (out / NAME).exists() else None


def flatten(value, name=""):
    """把嵌套的字典、列表摊平成 (名字, 值)。"""
    if isinstance(value, dict):
        return [item for key in value for item in flatten(value[key], f"{name}.{key}")]
    if isinstance(value, (list, tuple)):
        return [item for number, inner in enumerate(value) for item in flatten(inner, f"{name}.{number}")]
    return [(name, value)]


def differences(one, other):
    """两份检查点里逐位不同的项。"""
    one, other = flatten(one), flatten(other)
    if [name for name, _ in one] != [name for name, _ in other]:
        return ["两份检查点的项目不一样"]
    same = [torch.equal(a, b) if torch.is_tensor(a) else a == b for (_, a), (_, b) in zip(one, other)]
    return [name for (name, _), equal in zip(one, same) if not equal]


def kill_inside_save(which):
    """第 which 次存检查点，正写到一半时杀死自己。"""
    real_save, count = torch.save, [0]

    def save(value, file):
        count[0] += 1
        if count[0] == which:
            buffer = io.BytesIO()
            real_save(value, buffer)
            file.write(buffer.getvalue()[: len(buffer.getvalue()) // 2])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        real_save(value, file)

    torch.save = save


results = {}
began = time.monotonic()
whole = FOLDER / "whole"
results["完整的一次"] = run(whole)
duration = time.monotonic() - began
standard = content(whole)

rng, chains, kills = random.Random(5), [], 0
for trial in range(3):
    out = FOLDER / f"random{trial}"
    for attempt in range(12):
        pid = start(out, *(["--resume"] if content(out) else []))
        if attempt < 3:
            time.sleep(rng.uniform(0.3, 0.8) * duration)
            os.kill(pid, signal.SIGKILL)
        code = finish(pid)
        if code == 0:
            break
        kills += code == -signal.SIGKILL
    chains.append({"退出码": code, "不同": differences(standard, content(out)), "剩下的 .part": [path.name for path in out.glob("*.part")]})
results["随机"], results["杀死次数"] = chains, kills

precise = []
for which in (1, 4):
    out = FOLDER / f"save{which}"
    trial = {"被杀": run(out, sabotage=partial(kill_inside_save, which)), "读得出来": (content(out) is None) == (which == 1)}
    trial["续训"] = run(out, *(["--resume"] if which > 1 else []))
    trial["不同"] = differences(standard, content(out))
    precise.append(trial)
results["写到一半"] = precise

results["训练完再续"] = [run(whole, "--resume"), differences(standard, content(whole))]
longer = FOLDER / "longer"
results["加到 4 轮"] = [run(longer, "--epochs", "4"), run(whole, "--resume", "--epochs", "4"), differences(content(longer), content(whole))]

before = (longer / NAME).read_bytes()
code = run(longer, sabotage=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20 << 10, 20 << 10)))
results["磁盘满"] = {"退出码": code, "报错": longer.with_suffix(".err").read_text(encoding="utf-8"), "旧的完好": (longer / NAME).read_bytes() == before}
print(json.dumps(results, ensure_ascii=False))
