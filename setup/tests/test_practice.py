"""手敲练习：每个组件的标准答案在每一级都通过，空题目都不通过，每个常见错误都被抓到并说对；什么样的代码都弄不坏工具和记录。"""

import ast
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "setup" / "practice_engine"))
import client  # noqa: E402
import cutting  # noqa: E402
import explain  # noqa: E402
import records  # noqa: E402
import worker  # noqa: E402

COMPONENTS = cutting.components()
NAMES = list(COMPONENTS)
MUTANTS = [(name, index) for name, component in COMPONENTS.items() for index in range(len(component.mutants))]
pytest.importorskip("rich")


def tool(home, *arguments, timeout=120, **env):
    """像学习者那样在命令行里用；练习和记录写到 home，不碰自己的。"""
    environment = {**os.environ, "LLM_PRACTICE_DIR": str(home), "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1", **env}
    return subprocess.run([sys.executable, str(ROOT / "setup/practice.py"), *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=timeout)


def log(home):
    path = home / "practice_log" / "log.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def practice_file(home, name):
    component = COMPONENTS[name]
    return home / component.chapter / "practice" / f"{name}.py"


def put(home, name, code, level=4):
    """把一份答案放进练习文件。"""
    path = practice_file(home, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(cutting.practice_text(COMPONENTS[name], level, code), encoding="utf-8")
    return path


# ── 内容：每个组件 ──


def test_there_are_enough():
    assert len(COMPONENTS) >= 45
    assert len(MUTANTS) >= 200
    few = [name for name, component in COMPONENTS.items() if len(component.mutants) < 4]
    assert few == []


def test_main_scripts_are_covered():
    """第 3、4 章 main/ 里每个自己定义（不是沿用）的类都有练习。"""
    missing = []
    for chapter in ("ch03", "ch04"):
        for path in (ROOT / chapter / "main").glob("*.py"):
            text = path.read_text(encoding="utf-8")
            copied = {name for kind, _, names, *_ in cutting.copy_forward.regions(path) for name in names}
            defined = {node.name for node in ast.parse(text).body if isinstance(node, ast.ClassDef)} - copied
            missing += [name for name in defined if name not in NAMES]
    assert missing == []


@pytest.mark.parametrize("name", NAMES)
def test_component(name):
    """verify 的全部规则：题目合法、用例确定、每个错误被抓到。"""
    report = worker.verify(COMPONENTS[name])
    assert report["problems"] == []


@pytest.fixture(scope="module")
def hot():
    """一个热好的考官，几个测试轮着用：前一份代码再坏，也不影响后一份。"""
    made = client.Worker()
    yield made
    made.close()


@pytest.mark.parametrize("name", NAMES)
def test_answers_pass_and_questions_fail(name, hot):
    component = COMPONENTS[name]
    blank, answers, wrong = cutting.blanked(component)
    filled = iter(answers)
    solved = re.sub(r"____(?:=____)?", lambda _: next(filled), blank)
    assert wrong == [] and solved == component.body
    kinds = {1: "blank", 2: "todo", 3: "todo", 4: "missing"}
    for level in cutting.LEVELS:
        question = cutting.inspect(component, cutting.practice_text(component, level))[0]
        assert question["kind"] == kinds[level], question
        text = cutting.practice_text(component, level, solved if level == 1 else component.body)
        assert cutting.inspect(component, text) == (None, [])
        if level in (1, 4):  # 2、3 级放进去的文字与 4 级只差开头的一行说明
            report = worker.judge(component, text, str(component.path)) if level == 1 else client.check(component, text, 20, hot)  # 4 级像学习者那样，交给考官
            assert report["ok"], [case for case in report.get("cases", []) if not case["ok"]] or report


@pytest.mark.parametrize(("name", "index"), MUTANTS, ids=[f"{name}-{index + 1}" for name, index in MUTANTS])
def test_mutant_is_diagnosed(name, index):
    """把常见错误当成学习者的代码交上去：没通过，而且诊断说的就是它，或与它分不出的那一个。"""
    component = COMPONENTS[name]
    body = worker.mutate(component, component.mutants[index])
    report = worker.judge(component, cutting.practice_text(component, 4, body.strip("\n")), str(component.path), steps=False)
    assert not report["ok"]
    if report["kind"] == "module_error":
        return  # 连定义都执行不了的错误，直接指到那一行
    said = [mutant["index"] for mutant in report["mutants"]]
    equal = [other for other in range(len(component.mutants)) if all(map(worker.same_outcome, worker.mutant_results(component, other), worker.mutant_results(component, index)))]
    assert index in said or set(said) & set(equal), report["mutants"]
    assert all(mutant["exact"] for mutant in report["mutants"])


# ── 诊断 ──


def judge(name, body):
    component = COMPONENTS[name]
    text = cutting.practice_text(component, 4, body)
    return cutting.inspect(component, text)[0] or worker.judge(component, text, str(component.path))


def changed(name, old, new):
    body = COMPONENTS[name].body
    assert body.count(old) >= 1
    return judge(name, body.replace(old, new))


def test_first_step_that_differs():
    report = changed("MultiHeadAttention", "scores / self.head_dim**0.5", "scores")
    assert report["step"]["name"] == "weights" and report["step"]["mark"] == "⑤" and report["step"]["line"]
    report = changed("MultiHeadAttention", "keys.transpose(2, 3)", "queries.transpose(2, 3)")
    assert report["step"]["name"] == "scores" and report["step"]["mark"] == "③"


def test_first_step_with_other_names():
    body = COMPONENTS["CausalAttention"].body
    for old, new in (("queries", "q_"), ("keys", "k_"), ("values", "v_"), ("scores", "s_"), ("weights", "w_")):
        body = re.sub(rf"\b{old}\b", new, body)
    assert judge("CausalAttention", body)["ok"]
    report = judge("CausalAttention", body.replace("s_ / k_.shape[-1] ** 0.5", "s_"))
    assert report["step"]["by"] == "数值" and report["step"]["name"] == "weights"


def test_steps_merged_into_one_line_do_not_mislead():
    """投影和分头写成一行、先缩放再遮、拒绝时话说得不同：都不是错；说的还是真正的第一处不同。"""
    body = COMPONENTS["MultiHeadAttention"].body
    for name in ("queries", "keys", "values"):
        letter = {"queries": "query", "keys": "key", "values": "value"}[name]
        body = body.replace(f"        {name} = self.W_{letter}(x)  # (b, t, d_out)\n", "")
        body = body.replace(f"{name} = {name}.view", f"{name} = self.W_{letter}(x).view")
    body = body.replace("无法平均分给每个头", "不行")
    assert judge("MultiHeadAttention", body)["ok"]
    report = judge("MultiHeadAttention", body.replace("scores / self.head_dim**0.5", "scores"))
    assert report["step"]["name"] == "weights" and report["step"]["mark"] == "⑤" and report["mutants"][0]["exact"]
    scaled = body.replace("queries @ keys.transpose(2, 3)", "queries @ keys.transpose(2, 3) / self.head_dim**0.5").replace("scores / self.head_dim**0.5", "scores")
    assert judge("MultiHeadAttention", scaled)["ok"]
    report = judge("MultiHeadAttention", scaled.replace("return self.out_proj(context)", "return context"))
    assert report["step"]["name"] == "返回值" and report["step"]["last_good"] == "⑥"
    report = judge("MultiHeadAttention", body.replace("        scores.masked_fill_(self.mask[:t, :t], -torch.inf)\n", ""))
    assert report["step"]["name"] == "scores" and report["step"]["mark"] == "④"


def test_another_way_of_writing_passes():
    body = '''class LayerNorm(nn.Module):
    def __init__(self, emb_dim):
        super().__init__()
        self.eps = 1e-5
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x):
        return nn.functional.layer_norm(x, x.shape[-1:], self.scale, self.shift, self.eps)
'''
    assert judge("LayerNorm", body)["ok"]


@pytest.mark.parametrize(
    ("old", "new", "kind", "words"),
    [
        ("    def forward(self, x):", "    def forward(self, x)", "syntax", "冒号"),
        ("x.mean(dim=-1, keepdim=True)", "x.mean(dim=-1，keepdim=True)", "syntax", "中文标点"),
        ("torch.sqrt(var + self.eps)", "torch.sqrt(var + self.eps", "syntax", "括号"),
        ("torch.sqrt(var + self.eps)", "torch.sqrt(____)", "blank", "1 个 ____"),
        ("class LayerNorm", "class Layernorm", "missing", "LayerNorm"),
        ("def __init__(self, emb_dim)", "def __init__(self, dim)", "signature", "emb_dim"),
        ("def forward(self, x)", "def farward(self, x)", "signature", "forward"),
        ("class LayerNorm(nn.Module)", "class LayerNorm", "signature", "nn.Module"),
    ],
)
def test_trouble_seen_without_running(old, new, kind, words):
    report = changed("LayerNorm", old, new)
    assert (report["kind"], report["ok"]) == (kind, False)
    assert words in report["message"] + report["advice"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("norm_x = (x - mean)", "norm_x = (x - meen)", "是不是想写 mean"),
        ("super().__init__()", "pass", "super().__init__()"),
        ("self.scale * norm_x", "self.scael * norm_x", "scael"),
        ("self.scale * norm_x", "sys.exit(0) * norm_x", "sys"),
        ("return self.scale", "return self.forward(x)\n        return self.scale", "调用自己"),
    ],
)
def test_trouble_while_running(old, new, words):
    report = changed("LayerNorm", old, new)
    wrong = next(case for case in report["cases"] if not case["ok"])
    assert wrong["error"] and words in wrong["error"]["chinese"], wrong


def test_forgotten_return():
    report = changed("LayerNorm", "return self.scale", "self.scale")
    assert "忘了 return" in report["cases"][0]["problems"][0]["extra"]


def test_input_changed_in_place_does_not_spoil_the_next_check():
    """忘了 copy 的代码会改掉用例里的列表；下一次检查用的还是原来的。"""
    component = COMPONENTS["custom_collate_fn"]
    wrong = component.body.replace("item.copy()", "item")
    assert not judge("custom_collate_fn", wrong)["ok"]
    assert judge("custom_collate_fn", component.body)["ok"]


def test_error_points_at_their_line():
    report = changed("LayerNorm", "norm_x = (x - mean)", "norm_x = (x - meen)")
    text = cutting.practice_text(COMPONENTS["LayerNorm"], 4, COMPONENTS["LayerNorm"].body.replace("norm_x = (x - mean)", "norm_x = (x - meen)"))
    line = next(case for case in report["cases"] if case["error"])["error"]["line"]
    assert "meen" in text.splitlines()[line - 1]


def test_error_while_defining():
    report = judge("LayerNorm", "print(undefined_name)\n" + COMPONENTS["LayerNorm"].body)
    assert report["kind"] == "module_error" and report["line"] and "undefined_name" in report["message"]


@pytest.mark.parametrize(("message", "words"), [("expected ':'", "冒号"), ("'(' was never closed", "("), ("unexpected indent", "缩进")])
def test_syntax_is_explained(message, words):
    assert words in explain.translate(message, explain.SYNTAX)


def test_compare_sees_each_kind_of_difference():
    import torch

    one = torch.ones(2, 3)
    for other, what in [(torch.ones(3, 2), "形状"), (one.double(), "数的类型（dtype）"), (one * 2, "数值"), ([1.0] * 6, "类型")]:
        assert worker.difference(one, other)["what"] == what
    assert worker.difference(one, one + 1e-7) is None
    assert worker.difference(torch.tensor([float("nan")]), torch.tensor([float("nan")])) is None
    assert worker.difference(1, True)["what"] == "类型" and worker.difference({"a": 1}, {"b": 1})["what"] == "键"
    assert worker.difference([1, 2], [1, 2, 3])["what"] == "个数"


# ── 恶意的、失控的代码：工具还活着，记录完整 ──

HOSTILE = {
    "infinite loop": ("while True:\n            pass", "timeout", "还没有结束"),
    "loop inside torch": ("while True:\n            x = x @ x.transpose(-1, -2) @ x", "timeout", "还没有结束"),
    "memory bomb": ("hoard = []\n        while True:\n            hoard.append(torch.empty(30_000_000))", None, "内存"),
    "memory bomb in Python": ("hoard = [0]\n        while True:\n            hoard = hoard * 2", None, "内存"),
    "input": ("x = x + float(input())", None, "input()"),
    "sys.exit": ("import sys\n        sys.exit(3)", None, "sys.exit"),
    "os._exit": ("import os\n        os._exit(0)", "exit", "os._exit"),
    "segfault": ("import ctypes\n        ctypes.string_at(0)", "crash", "崩溃"),
    "monkeypatch": ("torch.sqrt = lambda y: y\n        torch.allclose = lambda *a, **k: True", "tamper", "torch.sqrt"),
    "write outside": ("open({outside!r}, 'w').write('x')", None, "不该写文件"),
    "append to the log": ("open({log!r}, 'w')", None, "不该写文件"),
    "delete": ("import os\n        os.remove({log!r})", None, "不该改动文件"),
    "fork": ("import os\n        os.fork()", None, "开新进程"),
    "subprocess": ("import subprocess\n        subprocess.run(['true'])", None, "开新进程"),
    "kill the parent": ("import os\n        os.kill(os.getppid(), 9)", None, "结束进程"),
    "giant print": ("print('很长' * 10_000_000)\n        x = x / 0.5", None, "打印了"),
    "fake answer": ("import os\n        os.write(1, b'{{\"token\": \"x\", \"result\": {{\"ok\": true}}}}\\n')\n        x = x / 0.5", None, ""),
    "thread": ("import threading, time\n        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n        x = x / 0.5", None, ""),
}


@pytest.mark.skipif(os.name == "nt", reason="这些手段里有一半是 POSIX 才有的")
@pytest.mark.parametrize("attack", HOSTILE)
def test_hostile_code(attack, hot, tmp_path):
    code, kind, words = HOSTILE[attack]
    (tmp_path / "log.jsonl").write_text("记录\n", encoding="utf-8")
    code = code.format(outside=str(tmp_path / "outside.txt"), log=str(tmp_path / "log.jsonl")) if "{" in code else code
    component = COMPONENTS["LayerNorm"]
    body = component.body.replace("        mean = x.mean", f"        {code}\n        mean = x.mean")
    text = cutting.practice_text(component, 4, body)
    report = client.check(component, text, limit=60 if "memory" in attack or "giant" in attack else 2, worker=hot)
    assert not report["ok"]
    assert kind in (None, report["kind"]), report
    everything = json.dumps(report, ensure_ascii=False) + ("打印了" if report.get("prints", {}).get("count", 0) > 1000 else "")
    assert words in everything, everything[:2000]
    if kind == "timeout":
        assert "while True" in text.splitlines()[report["line"] - 1] or "x = x @" in text.splitlines()[report["line"] - 1] or "pass" in text.splitlines()[report["line"] - 1]
    assert not (tmp_path / "outside.txt").exists()
    assert (tmp_path / "log.jsonl").read_text(encoding="utf-8") == "记录\n"
    assert client.check(component, cutting.practice_text(component, 4, component.body), limit=5, worker=hot)["ok"]  # 考官还好用


@pytest.mark.skipif(sys.platform != "linux", reason="比较的是 Linux 上的另一种限制办法")
def test_memory_limit_without_the_system(monkeypatch):
    """macOS 的系统不管内存，改由一个线程盯着：在这里用同样的办法试一次。"""
    monkeypatch.setenv("LLM_PRACTICE_POLL", "1")
    monkeypatch.setattr(worker, "MEMORY", worker.MEMORY)
    component = COMPONENTS["LayerNorm"]
    body = component.body.replace("        mean = x.mean", "        hoard = []\n        while True:\n            hoard.append(torch.ones(1_000_000))\n        mean = x.mean")
    own = client.Worker()
    try:
        report = own.ask(20, action="check", name="LayerNorm", text=cutting.practice_text(component, 4, body), path="LayerNorm.py", memory=300 * 2**20)
    finally:
        own.close()
    assert (report["kind"], report["ok"]) == ("memory", False), report


# ── 记录 ──


@pytest.fixture
def diary(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "FOLDER", tmp_path)
    return tmp_path / "log.jsonl"


def test_torn_last_line(diary):
    records.append("start", "LayerNorm", level=1)
    with open(diary, "ab") as file:
        file.write('{"version": 1, "time": "2026-01-01T00:00:00+00:00", "event": "che'.encode())  # 写到一半断电
    assert [entry["event"] for entry in records.read()] == ["start"]
    records.append("check", "LayerNorm", ok=True, level=1)
    assert [entry["event"] for entry in records.read()] == ["start", "check"]
    diary.write_bytes(b"\xff\xfe\n[]\n{}\nnull\n" + diary.read_bytes() + b'{"version": 99, "time": "2026-01-01T00:00:00+00:00", "event": "x", "name": "y"}\n')
    assert [entry["event"] for entry in records.read()] == ["start", "check"]


def test_many_writers(diary):
    threads = [threading.Thread(target=lambda who=who: [records.append("check", f"c{who}", number=i) for i in range(20)]) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = records.read()
    assert len(found) == 80 and len({(entry["name"], entry["number"]) for entry in found}) == 80


def test_grade():
    assert records.grade(4, 5, 0, 0, False) == 4
    assert records.grade(3, 30, 1, 0, False) == 3
    assert records.grade(1, 5, 0, 0, False) == 2
    assert records.grade(3, 60, 9, 5, False) == 2
    assert records.grade(4, 5, 0, 0, True) == 1


def test_schedule_spaces_out(diary):
    pytest.importorskip("fsrs")
    from datetime import datetime, timedelta, timezone

    def passed(day, grade):
        when = datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(days=day)
        base = {"name": "GELU", "when": when, "version": 1}
        return [{**base, "event": "start", "level": 3}, {**base, "event": "check", "ok": True, "level": 3, "grade": grade}]

    once, twice = passed(0, 3), passed(0, 3) + passed(3, 3)
    first = records.schedule(once)["GELU"]["due"]
    second = records.schedule(twice)["GELU"]["due"]
    assert timedelta(days=1) <= first - once[0]["when"] <= timedelta(days=10)
    assert second - twice[-1]["when"] > first - once[0]["when"]  # 记得住，下一次就隔得更久
    assert records.schedule(passed(0, 1))["GELU"]["due"] < first
    again = [*once, {**once[1], "when": once[1]["when"] + timedelta(hours=1)}]
    assert records.schedule(again)["GELU"]["due"] == first  # 同一回里再点一次检查，不算又复习了


# ── 命令行 ──


def test_home_list_and_progress(tmp_path):
    result = tool(tmp_path)
    assert result.returncode == 0 and f"{len(COMPONENTS)} 个组件" in result.stdout
    assert f"接下来输入：python setup/practice.py start {NAMES[0]}" in result.stdout
    everything = tool(tmp_path, "list").stdout
    assert all(name in everything for name in NAMES)
    chapter = tool(tmp_path, "list", "ch04").stdout
    assert "GPTModel" in chapter and "CausalAttention" not in chapter
    markdown = tool(tmp_path, "progress", "--readme").stdout
    assert "| 第 4 章 | 0 /" in markdown and "☐ `LayerNorm`" in markdown


@pytest.mark.parametrize(
    "arguments",
    [["frobnicate"], ["start", "没有的组件"], ["start", "Self"], ["check"], ["check", "LayerNorm"], ["start", "LayerNorm", "--level", "9"], ["list", "ch99"], ["run", "ch99"], ["run"], ["check", "LayerNorm", "--level", "2"],
     ["check", "LayerNorm", "--limit", "-1"], ["stats"], ["review", "LayerNorm"], ["progress", "x"], ["--nope"]],
    ids=" ".join,
)
def test_bad_input_is_one_chinese_sentence(tmp_path, arguments):
    result = tool(tmp_path, *arguments)
    assert result.returncode == 2
    assert re.search(r"[\u4e00-\u9fff]", result.stderr) and len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert list(tmp_path.rglob("*.py")) == []


def test_help_is_chinese(tmp_path):
    text = tool(tmp_path, "--help").stdout
    assert text.startswith("用法：") and "watch" in text and "usage" not in text


def test_names():
    assert cutting.find("LayerNorm").name == "LayerNorm" and cutting.find("层归一化").name == "LayerNorm"
    assert cutting.find("gptm").name == "GPTModel" and cutting.find("layern").name == "LayerNorm"
    with pytest.raises(ValueError, match="SelfAttention_v1.*SelfAttention_v2"):
        cutting.find("SelfAttention")
    with pytest.raises(ValueError, match="没有叫"):
        cutting.find("Xyz")


def test_whole_round(tmp_path):
    """从出题到通过：先错（诊断），要提示，再对；换级别、备份、进度、复习、统计、运行。"""
    path = practice_file(tmp_path, "LayerNorm")
    result = tool(tmp_path, "start", "LayerN", "--level", "3")
    assert result.returncode == 0 and path.is_file() and "unbiased" not in path.read_text(encoding="utf-8").split("class LayerNorm")[1].split("raise")[1]
    assert tool(tmp_path, "start", "LayerNorm", "--level", "2").returncode == 0  # 一个字没动，换级别不算覆盖
    assert "第 2 级" in path.read_text(encoding="utf-8")
    result = tool(tmp_path, "check")
    assert result.returncode == 1 and "还没有写" in result.stdout and "LayerNorm.py:" in result.stdout

    put(tmp_path, "LayerNorm", COMPONENTS["LayerNorm"].body.replace("unbiased=False", "unbiased=True"), level=3)
    result = tool(tmp_path, "check", "LayerNorm")
    assert result.returncode == 1
    assert '你的结果和"方差除以了 d − 1"一模一样' in result.stdout and "应为" in result.stdout and "最早分开的地方" in result.stdout
    assert "提示 1 /" in tool(tmp_path, "hint").stdout and "提示 2 /" in tool(tmp_path, "hint").stdout
    assert "-        var = x.var(dim=-1, keepdim=True, unbiased=True)" in tool(tmp_path, "diff").stdout

    mine = path.read_text(encoding="utf-8")
    refused = tool(tmp_path, "start", "LayerNorm")
    assert refused.returncode == 2 and path.read_text(encoding="utf-8") == mine
    assert tool(tmp_path, "start", "LayerNorm", "--force", "--level", "3").returncode == 0
    backups = list((path.parent / "backup").glob("LayerNorm-*.py"))
    assert len(backups) == 1 and backups[0].read_text(encoding="utf-8") == mine

    put(tmp_path, "LayerNorm", COMPONENTS["LayerNorm"].body, level=3)
    result = tool(tmp_path, "check")
    assert result.returncode == 0 and "✓ LayerNorm 通过：第 3 级" in result.stdout and "下次复习" in result.stdout
    assert "LayerNorm" in tool(tmp_path, "review").stdout
    assert "☑ `LayerNorm` 3" in tool(tmp_path, "progress", "--readme").stdout
    result = tool(tmp_path, "stats")
    assert result.returncode == 0 and (tmp_path / "practice_log" / "stats.png").stat().st_size > 10_000
    events = [entry["event"] for entry in log(tmp_path)]
    assert events == ["start", "start", "check", "check", "hint", "hint", "diff", "start", "check"]
    assert log(tmp_path)[3]["mutant"] == "方差除以了 d − 1" and log(tmp_path)[-1]["grade"] == 4

    mine = COMPONENTS["LayerNorm"].body.replace("super().__init__()", 'super().__init__()\n        print("这是我敲的")')
    (tmp_path / "practice_log" / "passed" / "LayerNorm.py").write_text(cutting.practice_text(COMPONENTS["LayerNorm"], 4, mine), encoding="utf-8")
    result = tool(tmp_path, "run", "ch04/main/example_02_layernorm.py")
    assert result.returncode == 0 and "你敲的（1 个）：LayerNorm" in result.stdout and result.stdout.count("这是我敲的") == 2 and "✗" not in result.stdout


def test_run_gives_arguments_and_exit_code(tmp_path):
    result = tool(tmp_path, "run", "ch03", "--heads", "三")
    assert result.returncode == 2 and "--heads" in result.stderr and "你敲的（0 个）" in result.stdout


def test_every_chapter_can_be_assembled(tmp_path, monkeypatch):
    """把标准答案当成学习者敲的，装回每章的总结脚本：换过的脚本仍是合法的 Python，组件一个不少。"""
    import importlib.util

    spec = importlib.util.spec_from_file_location("practice", ROOT / "setup/practice.py")
    practice = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(practice)
    monkeypatch.setattr(records, "FOLDER", tmp_path)
    (tmp_path / "passed").mkdir()
    for name, component in COMPONENTS.items():
        (tmp_path / "passed" / f"{name}.py").write_text(cutting.practice_text(component, 4, component.body), encoding="utf-8")
    for script in practice.SUMMARIES.values():
        text, used, rest = practice.assemble(ROOT / script)
        names = {name for node in ast.parse(text).body for name in cutting.copy_forward.names_of(node)}
        before = {name for node in ast.parse((ROOT / script).read_text(encoding="utf-8")).body for name in cutting.copy_forward.names_of(node)}
        assert before <= names and rest == []
        assert used or script.startswith("appendix")


def test_two_checks_at_once(tmp_path):
    put(tmp_path, "GELU", COMPONENTS["GELU"].body)
    put(tmp_path, "LayerNorm", COMPONENTS["LayerNorm"].body.replace("unbiased=False", "unbiased=True"))
    results = {}
    threads = [threading.Thread(target=lambda name=name: results.update({name: tool(tmp_path, "check", name)})) for name in ("GELU", "LayerNorm")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results["GELU"].returncode == 0 and results["LayerNorm"].returncode == 1
    assert {(entry["name"], entry["ok"]) for entry in log(tmp_path)} == {("GELU", True), ("LayerNorm", False)}


def test_hostile_file_from_the_command_line(tmp_path):
    path = put(tmp_path, "GELU", "import os\nos._exit(0)\n" + COMPONENTS["GELU"].body)
    result = tool(tmp_path, "check", "GELU")
    assert result.returncode == 1 and "os._exit" in result.stdout
    path.write_bytes(b"\xff\xfe\x00bad")
    assert tool(tmp_path, "check", "GELU").returncode == 2
    assert [entry["kind"] for entry in log(tmp_path)] == ["exit"]


def test_works_without_fsrs_and_says_what_to_install(tmp_path):
    """没装 fsrs：list、start、check 照用，review 说要装什么。"""
    (tmp_path / "hide").mkdir()
    (tmp_path / "hide" / "fsrs.py").write_text("raise ImportError('没有装')", encoding="utf-8")
    hidden = {"PYTHONPATH": str(tmp_path / "hide")}
    home = tmp_path / "home"
    assert tool(home, "list", **hidden).returncode == 0 and tool(home, "start", "GELU", **hidden).returncode == 0
    put(home, "GELU", COMPONENTS["GELU"].body)
    result = tool(home, "check", "GELU", **hidden)
    assert result.returncode == 0 and "下次复习" not in result.stdout
    result = tool(home, "review", **hidden)
    assert result.returncode == 2 and "requirements-practice.txt" in result.stderr


@pytest.mark.skipif(os.name == "nt", reason="用信号模拟 Ctrl+C")
def test_watch_checks_on_save(tmp_path):
    pytest.importorskip("watchfiles")
    import queue
    import signal
    import time

    put(tmp_path, "GELU", COMPONENTS["GELU"].body.replace("x**3", "x**2"))
    environment = {**os.environ, "LLM_PRACTICE_DIR": str(tmp_path), "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}
    # 在后台启动整套测试时，shell 会让它们都不理 Ctrl+C；这里恢复，否则送去的信号没有人听。
    listen = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    process = subprocess.Popen([sys.executable, str(ROOT / "setup/practice.py"), "watch", "GELU"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", preexec_fn=listen)
    lines = queue.Queue()
    threading.Thread(target=lambda: [lines.put(line) for line in process.stdout], daemon=True).start()

    def wait(words, seconds=300):
        end = time.monotonic() + seconds
        while True:
            line = lines.get(timeout=max(end - time.monotonic(), 0.01))
            if words in line:
                return line

    try:
        cold = wait("没通过")
        wait("hint GELU")
        time.sleep(0.5)  # 第一次检查之后才开始盯
        put(tmp_path, "GELU", COMPONENTS["GELU"].body)
        passed = wait("✓ GELU 通过")
        seconds = [float(re.search(r"([\d.]+) 秒", line)[1]) for line in (cold, passed)]
        assert seconds[1] < seconds[0] / 2, seconds  # 热的考官：不用再导入 torch；同一台机器上比，忙不忙都一样
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    assert [entry["ok"] for entry in log(tmp_path)] == [False, True]


def test_documentation():
    page = (ROOT / "setup" / "practice.md").read_text(encoding="utf-8")
    for words in ("看", "敲", "查", "复习", "mutants", "verify", "LayerNorm", "MultiHeadAttention", "秒"):
        assert words in page
    assert not re.search(r"(^|[\s`(])/(home|root|tmp|work|Users)/", page)
    helped = re.findall(r"^  (\w+) ", (ROOT / "setup/practice.py").read_text(encoding="utf-8").split('COMMANDS = """')[1].split('"""')[0], re.M)
    assert [command for command in helped if command not in page] == []
