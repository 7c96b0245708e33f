"""setup/ 里的工具：找数据、中文命令行、设备选择、画图字体，以及 run.sh、test.sh。"""

import hashlib
import importlib.util
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]


def load(path):
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*command, cwd=ROOT, **env):
    return subprocess.run([str(part) for part in command], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, encoding="utf-8", timeout=600)


def assert_one_chinese_sentence(result):
    lines = result.stderr.strip().splitlines()
    assert result.returncode == 2, result.stderr
    assert len(lines) == 1 and re.search(r"[\u4e00-\u9fff]", lines[0]), result.stderr


# ── 布局 ──


def test_visible_top_level_is_the_design_card():
    tracked = run("git", "ls-files").stdout.split()
    if not tracked:
        pytest.skip("不在 git 仓库里")
    visible = {path.split("/")[0] for path in tracked if not path.startswith(".")}
    assert visible == {"README.md", "CODING_STANDARDS.md", "requirements.txt", "setup", "ch02", "ch03", "ch04", "ch05", "ch06", "ch07", "appendix-A"}


def test_every_script_is_in_its_chapter_readme():
    scripts = [*ROOT.glob("ch0*/main/*.py"), *ROOT.glob("ch0*/experiments/*.py"), *ROOT.glob("appendix-*/main/*.py")]
    assert len(scripts) >= 15
    missing = [str(path) for path in scripts if path.stem not in (path.parents[1] / "README.md").read_text(encoding="utf-8")]
    assert missing == []


@pytest.mark.parametrize("chapter", ["ch02", "ch03", "ch04", "ch05", "ch06", "ch07", "appendix-A"])
def test_chapter_folders(chapter):
    for name in ("README.md", "main", "experiments", "tests"):
        assert (ROOT / chapter / name).exists()


@pytest.mark.parametrize(
    ("system", "machine", "torch_version", "numpy_ok", "numpy_bad"),
    [("linux", "x86_64", "2.13.0", "2.1", None), ("darwin", "arm64", "2.13.0", "2.1", None), ("win32", "AMD64", "2.13.0", "2.1", None), ("darwin", "x86_64", "2.2.2", "1.26.4", "2.0")],
)
def test_requirements_markers(system, machine, torch_version, numpy_ok, numpy_bad):
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    active = {r.name: r for r in requirements if r.marker is None or r.marker.evaluate({"sys_platform": system, "platform_machine": machine})}
    assert str(active["torch"].specifier) == f"=={torch_version}"
    assert active["numpy"].specifier.contains(numpy_ok)
    assert numpy_bad is None or not active["numpy"].specifier.contains(numpy_bad)


# ── 找数据 ──


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.delenv("LLM_DATA_DIR", raising=False)
    module = load("setup/find_data.py")
    for folder in ("setup/downloads", "setup/data", "mine"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "ch02" / "main" / "script.py"))
    return module, tmp_path


def test_find_data_order(tree, monkeypatch):
    module, root = tree
    (root / "setup/data/b.txt").write_text("自带")
    assert module.find_data("a.txt", "b.txt") == root / "setup/data/b.txt"
    (root / "setup/downloads/a.txt").write_text("下载")
    assert module.find_data("a.txt", "b.txt") == root / "setup/downloads/a.txt"
    (root / "mine/b.txt").write_text("明说的")
    monkeypatch.setenv("LLM_DATA_DIR", str(root / "mine"))
    assert module.find_data("a.txt", "b.txt") == root / "mine/b.txt"


@pytest.mark.parametrize(("name", "command"), [("a.txt", "setup/download.py"), ("tiktoken", "setup/prepare.py"), ("gpt_mini.pth", "ch05/main/gpt_train.py（约 90 秒）"), ("gpt2-355M.pth", "ch05/main/gpt_download.py --size 355M")])
def test_find_data_says_which_command_makes_it(tree, capsys, name, command):
    with pytest.raises(SystemExit) as stopped:
        tree[0].find_data(name, "b.txt")
    assert stopped.value.code == 2 and capsys.readouterr() == ("", f"找不到 {name}，请先运行 python {command}\n")


def test_find_data_finds_trained_weights(tree):
    module, root = tree
    (root / "ch05/outputs").mkdir(parents=True)
    (root / "ch05/outputs/gpt_mini.pth").write_bytes(b"")
    assert module.find_data("gpt_mini.pth") == root / "ch05/outputs/gpt_mini.pth"


def test_find_data_lists_everything(monkeypatch):
    result = run(sys.executable, "setup/find_data.py")
    assert result.returncode == 0 and result.stderr == "" and "GPT-2 的词表" in result.stdout and "gpt_download.py --size 1558M" in result.stdout


def test_find_data_in_notebook(tree, monkeypatch):
    module, root = tree
    (root / "setup/data/b.txt").write_text("自带")
    monkeypatch.delattr(module, "__file__")
    (root / "ch02").mkdir()
    monkeypatch.chdir(root / "ch02")
    assert module.find_data("b.txt") == root / "setup/data/b.txt"


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "读不了"), (b"", "是空的"), (b"  \n", "是空的"), (b"ab\0cd", "二进制"), ("中文".encode("gbk"), "UTF-8"), (b"\x89PNG\r\n\x1a\n\xff", "UTF-8")],
)
def test_read_text_refuses(tmp_path, content, message):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load("setup/find_data.py").read_text(path)


def test_read_text_folder_and_bom(tmp_path):
    module = load("setup/find_data.py")
    with pytest.raises(ValueError, match="读不了"):
        module.read_text(tmp_path)
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbf" + "你好".encode())
    assert module.read_text(tmp_path / "bom.txt") == "你好"


# ── 中文命令行 ──


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--nope"], "不认识的参数 --nope"), (["--heads", "三"], "--heads 要的是整数"), (["--heads"], "--heads 后面少了一个值"), (["--head", "3"], "不认识的参数")],
)
def test_chinese_errors(arguments, message):
    result = run(sys.executable, "setup/chinese_cli.py", *arguments)
    assert_one_chinese_sentence(result)
    assert message in result.stderr


def test_chinese_choice_and_required(capsys):
    parser = load("setup/chinese_cli.py").ChineseParser("试")
    parser.add_argument("--size", choices=["mini", "124M"])
    parser.add_argument("name")
    for arguments, message in [(["--size", "x", "n"], "--size 不能是 'x'"), ([], "缺少参数 name")]:
        with pytest.raises(SystemExit) as error:
            parser.parse_args(arguments)
        assert error.value.code == 2 and message in capsys.readouterr().err


def test_chinese_help():
    text = run(sys.executable, "setup/chinese_cli.py", "--help").stdout
    assert "用法：" in text and "选项" in text
    assert not re.search(r"usage|options|show this help", text)


def test_marks_survive_a_gbk_console():
    code = "from chinese_cli import ChineseParser; ChineseParser('试'); print('✓ ✗')"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "setup", env={**os.environ, "PYTHONIOENCODING": "gbk", "PYTHONUTF8": "0"}, capture_output=True)
    output = result.stdout.decode("gbk")
    assert result.returncode == 0 and "CHECK MARK" in output and "BALLOT X" in output


# ── 备料：GPT-2 的词表 ──


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """放词表的工具，目标换成一个空文件夹。"""
    module = load("setup/prepare.py")
    monkeypatch.setattr(module, "DOWNLOADS", tmp_path)
    monkeypatch.setattr(module, "FOLDER", tmp_path / "tiktoken")
    return module


def test_prepared_vocabulary_needs_no_network(prepare, tmp_path):
    assert prepare.place() == [] and len(list((tmp_path / "tiktoken").iterdir())) == 2
    code = "import socket; socket.socket = None; import tiktoken; print(tiktoken.get_encoding('gpt2').encode('Hello, I am'))"
    result = run(sys.executable, "-c", code, TIKTOKEN_CACHE_DIR=str(tmp_path / "tiktoken"))
    assert result.stdout == "[15496, 11, 314, 716]\n", result.stderr


def test_prepare_mends_a_broken_vocabulary_and_leaves_a_good_one(prepare, tmp_path):
    prepare.place()
    good, broken = sorted((tmp_path / "tiktoken").iterdir())
    before = good.stat().st_mtime_ns
    broken.write_bytes(broken.read_bytes()[:-1])
    assert prepare.place() == [] and good.stat().st_mtime_ns == before
    assert hashlib.sha256(broken.read_bytes()).hexdigest() in prepare.FILES.values()


def test_prepare_without_a_source_says_what_to_do(prepare, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "find_spec", lambda name: None)
    monkeypatch.delenv("LLM_DATA_DIR", raising=False)
    monkeypatch.setattr(sys, "argv", ["prepare.py"])
    with pytest.raises(SystemExit) as stopped:
        prepare.main()
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and err.count("\n") == 1 and "pip install -r requirements.txt" in err and "download.py gpt2-tokenizer" in err


def test_prepare_refuses_a_wrong_source(prepare, monkeypatch, tmp_path):
    (tmp_path / "gpt2_bpe").mkdir()
    for name in prepare.FILES:
        (tmp_path / "gpt2_bpe" / name).write_text("假的")
    monkeypatch.setattr(prepare, "find_spec", lambda name: None)
    monkeypatch.setenv("LLM_DATA_DIR", str(tmp_path))
    assert prepare.place() == list(prepare.FILES) and not (tmp_path / "tiktoken").exists()


# ── 设备 ──


def test_pick_device(monkeypatch):
    pick_device = load("setup/device_check.py").pick_device
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto").type == "cpu" and pick_device("cpu").type == "cpu"
    for name in ("mps", "cuda"):
        with pytest.raises(ValueError, match=f"没有设备 {name}"):
            pick_device(name)
    with pytest.raises(ValueError, match="没有设备 tpu"):
        pick_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto").type == "cuda"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto").type == "mps"


def test_device_report():
    result = run(sys.executable, "setup/device_check.py", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    for part in ("找到了什么", "选了哪个：cpu", "GFLOP/s", "训练一步", "内存不够", "梯度累积"):
        assert part in result.stdout


@pytest.mark.parametrize("name", ["tpu", "mps"])
def test_missing_device_is_an_error(name):
    if name == "mps" and torch.backends.mps.is_available():
        pytest.skip("这台机器有 MPS")
    assert_one_chinese_sentence(run(sys.executable, "setup/device_check.py", "--device", name))


def test_chinese_in_pictures(tmp_path):
    code = "import matplotlib; matplotlib.use('Agg'); import matplotlib.pyplot as plt, zhplot; plt.title('损失 −1 √²'); plt.savefig('x.png')"
    result = run(sys.executable, "-W", "error", "-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr  # 缺字时 matplotlib 会警告


# ── run.sh 与 test.sh：用假的 python 试，不真的安装 ──


@pytest.fixture
def project(tmp_path):
    """一个最小的项目：setup/run.sh、setup/test.sh，和一个会记账的假 python3。"""
    root = tmp_path / "project"
    (root / "setup" / "checks").mkdir(parents=True)
    for name in ("setup/run.sh", "setup/test.sh", "setup/prepare.py", "requirements.txt", "setup/requirements-test.txt"):
        (root / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    (root / "hello.py").write_text("import sys; print('你好', sys.argv[1:])", encoding="utf-8")
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    fake = f"""#!/bin/bash
echo "$@" >> "{tmp_path}/log"
if [ "$1" = -m ] && [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; exit 0; fi
if [ "$1" = -m ] && [ "$2" = pip ]; then exit "${{PIP_RESULT:-0}}"; fi
if [ "$1" = -m ] && [ "$2" = pytest ]; then echo "3 passed"; exit 0; fi
if [ "$1" = -c ]; then exit "${{VERSION_RESULT:-0}}"; fi
exec "{sys.executable}" "$@"
"""
    for name in ("python3", "python", "python3.10", "python3.11", "python3.12", "python3.13"):
        (bin_folder / name).write_text(fake)
        (bin_folder / name).chmod(0o755)
    return root, tmp_path / "log", {"PATH": f"{bin_folder}:/usr/bin:/bin", "PYTHON": ""}


def pip_calls(log):
    return [line for line in log.read_text().splitlines() if line.startswith("-m pip")]


def test_run_sh_installs_once_and_passes_arguments(project, tmp_path):
    root, log, env = project
    for _ in range(2):
        result = run("bash", root / "setup/run.sh", "hello.py", "--x", "两个 词", cwd=tmp_path, **env)
        assert result.returncode == 0 and "你好 ['--x', '两个 词']" in result.stdout, result.stderr
    assert len(pip_calls(log)) == 1 and "-r" in pip_calls(log)[0]
    (root / "requirements.txt").write_text("torch\n")
    run("bash", root / "setup/run.sh", "hello.py", **env)
    assert len(pip_calls(log)) == 2


def test_run_sh_python_too_old(project):
    root, _, env = project
    result = run("bash", root / "setup/run.sh", "hello.py", **env, VERSION_RESULT="1")
    assert_one_chinese_sentence(result)
    assert "3.10" in result.stderr


def test_run_sh_pip_fails_then_recovers(project):
    root, log, env = project
    result = run("bash", root / "setup/run.sh", "hello.py", **env, PIP_RESULT="1")
    assert result.returncode == 2 and "PIP_INDEX_URL" in result.stderr and "Traceback" not in result.stderr
    assert run("bash", root / "setup/run.sh", "hello.py", **env).returncode == 0
    assert len(pip_calls(log)) == 2


def test_run_sh_missing_script(project):
    root, _, env = project
    run("bash", root / "setup/run.sh", "hello.py", **env)
    assert_one_chinese_sentence(run("bash", root / "setup/run.sh", "nope.py", **env))


def test_test_sh_runs_checks_then_pytest(project):
    root, log, env = project
    for name in ("setup/copy_forward.py", "setup/checks/comments.py", "setup/checks/proportion.py", "ch05/main/gpt_train.py", "ch05/experiments/exp_real_llm.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("print('好')")
    result = run("bash", root / "setup/test.sh", "-k", "x", cwd="/", **env)
    assert result.returncode == 0 and "3 passed" in result.stdout, result.stderr
    lines = log.read_text().splitlines()
    assert {"setup/copy_forward.py check", "setup/checks/comments.py", "setup/checks/proportion.py", "ch05/main/gpt_train.py", "ch05/experiments/exp_real_llm.py --convert"} <= set(lines)
    assert lines[-1].startswith("-m pytest") and lines[-1].endswith("-k x")


@pytest.mark.parametrize("name", ["setup/run.sh", "setup/test.sh", ".ci/run"])
def test_shell_scripts_are_plain_bash_3(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert run("bash", "-n", ROOT / name).returncode == 0
    assert not re.search(r"mapfile|readarray|\$\{\w+(,,|\^\^)\}|declare -A|&>>|\|&", text)
    assert (ROOT / name).stat().st_mode & stat.S_IXUSR
