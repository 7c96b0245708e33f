"""与考官进程（worker.py）说话：启动、提问、等回答；它卡住、退出、内存超限时，说清是怎么回事，再换一个新的"""

import contextlib
import json
import os
import queue
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

WORKER = Path(__file__).resolve().parent / "worker.py"
START = 120  # 导入 torch 最多等这么久：慢的硬盘上第一次可能要半分钟


class Worker:
    """一个考官进程。第一次提问时才启动，用完要 close。"""

    def __init__(self):
        self.process, self.folder, self.phase = None, None, ""

    def start(self):
        """启动进程，等它导入 torch。"""
        self.folder = tempfile.TemporaryDirectory(prefix="practice_", ignore_cleanup_errors=True)
        self.token = secrets.token_hex(8)  # 学习者的代码猜不到它，伪造不了回答
        # 自成一个会话：超时的时候，连它开出的进程一起结束；Ctrl+C 也不会先把它打断。
        own = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if os.name == "nt" else {"start_new_session": True}
        environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), self.token, self.folder.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, **own
        )
        self.answers = queue.Queue()
        threading.Thread(target=self.listen, args=(self.process, self.answers), daemon=True).start()

    def listen(self, process, answers):
        """把进程说的话一行行收下来。

        参数:
            process (Popen): 进程
            answers (queue.Queue): 放在这里；进程结束时放 None
        """
        for line in process.stdout:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                message = json.loads(line)
                if message["token"] == self.token:
                    answers.put(message)
        answers.put(None)

    def ask(self, limit, **request):
        """问一件事，等回答。

        参数:
            limit (float): 学习者的代码最多运行几秒
            request: action、name、text、path 等

        返回:
            dict: 回答；进程出了事，则是说明出了什么事的报告
        """
        if self.process is None or self.process.poll() is not None:
            self.close()
            self.start()
        self.phase = "starting"
        try:
            self.process.stdin.write(json.dumps({"limit": limit, **request}).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            pass  # 它刚好没了：下面读到 None，照样会说明
        while True:
            # 进程自己会在 limit 秒后停下（导入、用例、对照各算各的），之后还要跑各个常见错误；这里等得更久，是防它连停都停不下来。
            patience = limit * 3 + 30 if self.phase == "running" else limit * 2 + 30 if request["action"] == "verify" and self.phase not in ("starting", "ready") else START
            try:
                message = self.answers.get(timeout=patience)
            except queue.Empty:
                message = None
                timeout = True
            else:
                timeout = False
            if message is None:
                return self.died(limit, request.get("path", ""), timeout)
            if "phase" in message:
                self.phase = message["phase"]
            else:
                if message.get("dirty"):
                    self.close()
                return message["result"]

    def died(self, limit, path, timeout):
        """进程没给回答就没了（或一直不回答）：说清是为什么。

        参数:
            limit (float): 时间限制
            path (str): 学习者的文件
            timeout (bool): 是等不及了，还是它自己没了

        返回:
            dict: 报告
        """
        if not timeout:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
        code = self.process.poll()
        hang = Path(self.folder.name) / "hang.txt"
        dump = hang.read_text(encoding="utf-8", errors="replace") if hang.is_file() else ""
        errors = b""
        if code is not None and self.phase == "starting":
            errors = self.process.stderr.read()[-600:]
        phase = self.phase
        self.close()
        report = {"ok": False, "line": None, "advice": ""}
        if timeout or "Timeout" in dump:
            frames = re.findall(r'File "(.*)", line (\d+) in (.+)', dump)
            mine = [int(line) for file, line, _ in frames if path and Path(file).name == Path(path).name]
            return {**report, "kind": "timeout", "line": mine[0] if mine else None, "phase": phase,
                    "message": f"运行了 {limit:g} 秒还没有结束，已经停掉" + (f"：停在第 {mine[0]} 行" if mine else ""), "advice": "循环的条件会变成 False 吗？循环里的变量变了没有？"}
        if code == 77 or code in (-signal.SIGKILL if hasattr(signal, "SIGKILL") else None,):
            return {**report, "kind": "memory", "message": "内存超过了限制，进程被停掉", "advice": "是不是形状写错，或列表一直在变长？"}
        if phase == "starting":
            return {**report, "kind": "setup", "message": f"检查用的进程启动不了（退出码 {code}）：{errors.decode('utf-8', 'replace').strip()[-400:]}"}
        if code is not None and code < 0:
            return {**report, "kind": "crash", "message": f"你的代码让 Python 崩溃了（信号 {-code}）", "advice": "多半是没有尽头的递归，或错用了 ctypes 之类的底层工具"}
        return {**report, "kind": "exit", "message": f"你的代码让整个进程退出了（退出码 {code}）：里面有 os._exit 之类的调用", "advice": "练习的代码不要自己退出"}

    def close(self):
        """结束进程，连同它开出的进程；删掉临时文件夹。"""
        if self.process is not None:
            for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
                with contextlib.suppress(OSError, ValueError):
                    if stream is self.process.stdin:
                        stream.close()
            with contextlib.suppress(OSError, ProcessLookupError):
                if os.name == "nt":
                    self.process.kill()
                else:
                    os.killpg(self.process.pid, signal.SIGKILL)  # 会话号就是它的进程号，连同它的子进程
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
            self.process = None
        if self.folder is not None:
            self.folder.cleanup()
            self.folder = None


def check(component, text, limit=10, worker=None):
    """检查一份练习：先看不运行就看得出的毛病，再请考官跑用例。

    参数:
        component (Component): 组件
        text (str): 学习者的文件
        limit (float): 最多运行几秒
        worker (Worker): 已经热好的考官；None 时用一次性的

    返回:
        dict: 报告，另有 notes（提醒）和 total（一共几秒）
    """
    import cutting

    started = time.perf_counter()
    problem, notes = cutting.inspect(component, text)
    if problem is None:
        own = worker or Worker()
        try:
            problem = own.ask(limit, action="check", name=component.name, text=text, path=str(component.path))
        finally:
            if worker is None:
                own.close()
    return {**problem, "notes": notes, "total": time.perf_counter() - started}
