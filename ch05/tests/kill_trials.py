"""给测试用：在各种时刻弄断训练（kill -9、写检查点写到一半、磁盘满），再接着训练，看结果是否与没断过逐位相同。

用法：python kill_trials.py 文本 工作文件夹
先导入一次 exp_resume.py，再一次次 fork 出子进程去训练：省去每次导入的几秒。最后一行打印 JSON：每项试验的结果。
"""

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
from tiny_train import tiny

TEXT, FOLDER = Path(sys.argv[1]), Path(sys.argv[2])
# 每轮 10 步、训练 3 轮，--save-every 0 时每走一步存一次，每轮结束再存一次：共存 33 次
SAVED_STEPS = [step for epoch in range(3) for step in [*range(10 * epoch, 10 * epoch + 10), 10 * epoch + 9]]
torch.set_num_threads(1)
torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # 第一次建优化器要导入近两秒的东西，在 fork 之前做掉
exp_resume = tiny("experiments/exp_resume.py")


def start(out, *args, sabotage=None):
    """fork 出一个子进程去训练，返回进程号；输出写到 out 旁边的 .log。"""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(os.open(out.with_suffix(".err"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        if sabotage:
            sabotage()
        sys.argv = ["exp_resume.py", "--train", "--text", str(TEXT), "--out", str(out), "--save-every", "0", "--device", "cpu", *args]
        exp_resume.main()
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
    path = out / "resume_tiny.pth"
    return exp_resume.load_checkpoint(path) if path.exists() else None


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


def kill_inside_save(which, half):
    """第 which 次存检查点时杀死自己：half 为真，正写到一半；否则，已写完、还没改名。"""
    real_save, real_replace, count = torch.save, os.replace, [0]

    def save(value, file):
        count[0] += 1
        if count[0] == which and half:
            buffer = io.BytesIO()
            real_save(value, buffer)
            file.write(buffer.getvalue()[: len(buffer.getvalue()) // 2])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        real_save(value, file)

    def replace(source, target):
        if count[0] == which and not half:
            os.kill(os.getpid(), signal.SIGKILL)
        real_replace(source, target)

    torch.save, os.replace = save, replace


results = {}

# 没断过的一次，作标准
started = time.monotonic()
whole = FOLDER / "whole"
results["完整的一次"] = run(whole)
duration = time.monotonic() - started
standard = content(whole)
results["存过的步"] = standard["progress"]["step"]

# 随机的时刻 kill -9，接着训练，又 kill -9 ……直到训练完
rng = random.Random(5)
chains, kills, parts = [], 0, 0
for trial in range(8):
    out = FOLDER / f"random{trial}"
    for attempt in range(20):
        resume = ["--resume"] if content(out) else []
        pid = start(out, *resume)
        if attempt < 4:
            time.sleep(rng.uniform(0.05, 0.6) * duration)
            os.kill(pid, signal.SIGKILL)
        code = finish(pid)
        if code == 0:
            break
        kills += code == -signal.SIGKILL
        parts += (out / "resume_tiny.pth.part").exists()
        content(out)  # 名字正式的文件，任何时刻都必须读得出来
    chains.append({"退出码": code, "不同": differences(standard, content(out)), "剩下的": sorted(path.name for path in out.iterdir())})
results["随机"] = chains
results["杀死次数"], results["正在写的次数"] = kills, parts

# 指定的时刻：写到一半、写完还没改名
precise = []
for which, half in [(1, True), (3, True), (11, True), (12, True), (33, True), (20, False)]:  # 11 是第 1 轮结束那一次
    out = FOLDER / f"save{which}{half}"
    trial = {"第几次": which, "写到一半": half, "被杀": run(out, sabotage=partial(kill_inside_save, which, half))}
    saved = content(out)
    trial["留下的步"] = saved and saved["progress"]["step"]
    trial["应留下"] = SAVED_STEPS[which - 2] if which > 1 else None
    trial["留下 .part"] = (out / "resume_tiny.pth.part").exists()
    if which == 1:  # 一次都没存成，--resume 应当说清楚，从头训练应当不受 .part 影响
        trial["没有检查点时 --resume"] = run(out, "--resume")
        trial["报错"] = out.with_suffix(".err").read_text(encoding="utf-8")
    trial["续训"] = run(out, *(["--resume"] if saved else []))
    trial["不同"] = differences(standard, content(out))
    trial["剩下的"] = sorted(path.name for path in out.iterdir())
    precise.append(trial)
results["指定"] = precise

# 训练完再 --resume 什么都不变；加大 --epochs 则接着练，与一口气练那么多轮相同
out = FOLDER / "whole"
results["训练完再续"] = [run(out, "--resume"), differences(standard, content(out))]
longer = FOLDER / "longer"
results["加到 5 轮"] = [run(longer, "--epochs", "5"), run(out, "--resume", "--epochs", "5"), differences(content(longer), content(out))]

# 磁盘满：文件最大 20 KB，检查点写不下
before = (longer / "resume_tiny.pth").read_bytes()
code = run(longer, sabotage=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20 << 10, 20 << 10)))
intact = (longer / "resume_tiny.pth").read_bytes() == before
left = sorted(path.name for path in longer.iterdir())
results["磁盘满"] = {"退出码": code, "报错": longer.with_suffix(".err").read_text(encoding="utf-8"), "旧的完好": intact, "剩下的": left}

print(json.dumps(results, ensure_ascii=False))
