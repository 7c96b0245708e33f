"""测试之间共用：同一个脚本、同样的参数，一轮测试里只真正跑一次

章的测试看它打印了什么，golden.json 的测试又要看一遍；两个进程各跑各的，就是四遍。
这里跑完把结果写进这一轮测试的临时文件夹，谁再要，读出来就是。
"""

import fcntl
import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from subprocess import DEVNULL, run
from types import SimpleNamespace

FIXED = {"PYTHONUTF8": "1", "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
TORCHRUN = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]  # 外面若恰好设了，先去掉
ROUND = Path(tempfile.gettempdir()) / f"0-1-llm-{os.getuid()}-{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}"  # 每一轮测试一个


def once(script, *arguments):
    """在一个空文件夹里运行一个脚本，只用 1 个线程；这一轮里跑过的，直接给结果。

    参数:
        script (Path): 脚本
        *arguments (str): 它的参数

    返回:
        SimpleNamespace: returncode、stdout、stderr、left（在当前文件夹里留下的文件名）、started（什么时候开始跑的）
    """
    ROUND.mkdir(exist_ok=True)
    kept = ROUND / hashlib.sha256(json.dumps([str(script), *arguments, os.environ.get("LLM_DATA_DIR")]).encode()).hexdigest()
    with open(kept.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # 另一个进程正在跑同一个，就等它
        if not kept.is_file():
            with tempfile.TemporaryDirectory() as elsewhere:
                env = {name: value for name, value in os.environ.items() if name not in TORCHRUN} | FIXED
                started = time.time()
                done = run([sys.executable, str(script), *arguments], cwd=elsewhere, env=env, capture_output=True, encoding="utf-8", errors="replace", stdin=DEVNULL, timeout=1800)
                result = {"returncode": done.returncode, "stdout": done.stdout, "stderr": done.stderr, "left": sorted(os.listdir(elsewhere)), "started": started}
            kept.write_text(json.dumps(result), encoding="utf-8")
        return SimpleNamespace(**json.loads(kept.read_text(encoding="utf-8")))
