"""第 5 章的练习：每一道都从头跑到尾，读它印出来的数，与 llms-from-scratch、transformers 的实现比较。

运行：python -m pytest ch05/tests/test_exercises_5.py
不需要原书的数据和权重。每个脚本都拷到一个临时的小项目里运行，模型是当场造的极小的一个；读者训练过的模型、下载过的权重，都影响不到结果。
"""

import importlib.util
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiktoken
import torch

ROOT = Path(__file__).resolve().parents[2]
EXERCISES = sorted((ROOT / "ch05" / "experiments").glob("exercise_5_*.py"))
STORY = (ROOT / "setup" / "data" / "story-en.txt").read_text(encoding="utf-8-sig")[:7000]  # 用开头的三分之一，测试才快
WEIGHTS = Path(os.environ.get("LLM_DATA_DIR", "no-such-folder")) / "gpt2-124M.pth"
CONFIG = {"vocab_size": 50257, "context_length": 64, "emb_dim": 16, "n_heads": 2, "n_layers": 1, "drop_rate": 0.1, "qkv_bias": False}
CPU = torch.device("cpu")


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find(number):
    return next(path for path in EXERCISES if path.name.startswith(f"exercise_5_{number}_"))


@pytest.fixture
def project(tmp_path):
    """一个临时的小项目：自带文本的开头，分词器的词表。"""
    for folder in ("ch05/experiments", "ch05/outputs", "setup/data", "setup/downloads"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copytree(ROOT / "setup" / "downloads" / "tiktoken", tmp_path / "setup" / "downloads" / "tiktoken")
    (tmp_path / "setup" / "data" / "story-en.txt").write_text(STORY, encoding="utf-8", newline="")
    return tmp_path


def run(number, project, *args, change=lambda source: source, ok=True):
    """在临时的小项目里运行一道练习，返回它印的；change 可以先改一改源代码。"""
    script = project / "ch05" / "experiments" / find(number).name
    script.write_text(change(find(number).read_text(encoding="utf-8")), encoding="utf-8")
    env = {key: value for key, value in os.environ.items() if key != "LLM_DATA_DIR"} | {"PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, str(script), *args], env=env, cwd=project, capture_output=True, encoding="utf-8", timeout=300)
    if ok:
        assert result.returncode == 0 and "✗" not in result.stdout and "✓" in result.stdout and "Traceback" not in result.stderr, result.stdout + result.stderr
        return result.stdout
    return result


def numbers(pattern, text):
    """pattern 的每个括号里的数。"""
    found = re.search(pattern, text)
    assert found, f"没有印出 {pattern}：{text}"
    return [float(number.replace(",", "")) for number in found.groups()]


@pytest.fixture(scope="module")
def book():
    """原书作者的实现。"""
    pytest.importorskip("llms_from_scratch.ch05", reason="没有装 llms-from-scratch，无法与它比较")
    from llms_from_scratch import ch02, ch04, ch05

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(ROOT / "setup" / "downloads" / "tiktoken"))
        yield {**vars(ch02), **vars(ch04), **vars(ch05), "tokenizer": tiktoken.get_encoding("gpt2")}


def save_model(path, book, config=CONFIG, sharper=8):
    """存一个极小的检查点，返回原书作者的模型，权重相同。"""
    torch.manual_seed(0)
    model = book["GPTModel"](config).eval()
    with torch.no_grad():
        model.out_head.weight *= sharper  # 让它有主见，贪心和采样才不同
    # 掩码的类型两边不同，各用各的
    state = {name: tensor.bool() if name.endswith("mask") else tensor for name, tensor in model.state_dict().items()}
    torch.save({"config": config, "model": state}, path)
    return model


@pytest.fixture
def mini(project, book):
    return save_model(project / "ch05" / "outputs" / "gpt_mini.pth", book)


def loaders(book, text=STORY):
    """原书的数据加载器，切法与练习相同。"""
    split, make = int(0.9 * len(text)), book["create_dataloader_v1"]
    train = make(text[:split], batch_size=2, max_length=64, stride=64, num_workers=0)
    return train, make(text[split:], batch_size=2, max_length=64, stride=64, shuffle=False, drop_last=False, num_workers=0)


def test_every_exercise_is_there():
    readme = (ROOT / "ch05" / "README.md").read_text(encoding="utf-8")
    assert [path.name[:12] for path in EXERCISES] == [f"exercise_5_{number}" for number in range(1, 7)]
    assert all(path.name in readme for path in EXERCISES)


def test_5_1(project):
    output = run(1, project)
    logits = [4.51, 0.89, -1.90, 6.75, 1.63, -1.62, -1.89, 6.28, 1.79]
    for temperature, count in [("1", 0), ("0.1", 0), ("5", 32)]:  # 次数是书上的
        chance = math.exp(-1.89 / float(temperature)) / sum(math.exp(logit / float(temperature)) for logit in logits)
        drawn, printed, expected = numbers(rf"温度 {temperature} +抽中 +(\d+) 次　概率 ([\d.]+)　该有 ([\d.]+) 次", output)
        assert drawn == count and printed == pytest.approx(chance, abs=5e-5) and expected == pytest.approx(1000 * chance, abs=0.05)
    assert "概率 0.0430" in output and "频率 0.0320" in output
    errors = [numbers(rf"抽 +{times} 次　频率 [\d.]+　误差 ([\d.]+)　预计的误差 ([\d.]+)", output) for times in ("100", "10,000", "1,000,000")]
    assert all(error < 3 * expected for error, expected in errors) and errors[0][1] == pytest.approx(math.sqrt(0.0430 * 0.957 / 100), abs=2e-4)


def test_5_2(project, book, mini):
    output = run(2, project, "--quick")
    assert f"模型　{project / 'ch05' / 'outputs' / 'gpt_mini.pth'}" in output
    rows = re.findall(r"温度 ([\d.]+)　top-k (\S+)　不同的 (\d+) 段　重复 (\d+)%　选中的概率 (\S+)", output)
    assert [row[:2] for row in rows] == [("0.0", "不限"), ("0.5", "不限"), ("1.0", "不限"), ("1.4", "25"), ("5.0", "25"), ("5.0", "不限")]
    assert rows[0][2] == "1" and rows[-1][2] == "4"
    probability = {row[:2]: float(row[4]) for row in rows}
    # 贪心那一组，用原书的 generate 再写一遍，照定义算
    idx = torch.tensor([book["tokenizer"].encode("Every effort moves you")])
    out = book["generate"](mini, idx, 20, context_size=64)
    with torch.no_grad():
        log_probas = torch.log_softmax(mini(out), dim=-1)
    chosen = [log_probas[0, place - 1, out[0, place]].item() for place in range(idx.shape[1], out.shape[1])]
    assert probability["0.0", "不限"] == pytest.approx(math.exp(sum(chosen) / 20), rel=0.06)  # 只印了两位
    assert repr(book["tokenizer"].decode(out[0, idx.shape[1] :].tolist())) in output
    assert probability["0.5", "不限"] > probability["1.0", "不限"] > probability["5.0", "不限"] and probability["5.0", "25"] > probability["5.0", "不限"]
    assert numbers(r"可能性高了 ([\d,]+) 倍", output)[0] == pytest.approx(probability["5.0", "25"] / probability["5.0", "不限"], rel=0.1)


def test_5_3(project, book, mini):
    output = run(3, project, "--quick")
    idx = torch.tensor([book["tokenizer"].encode("Every effort moves you")])
    greedy = book["generate_text_simple"](mini, idx, 8, 64)
    assert f"贪心　{book['tokenizer'].decode(greedy[0].tolist())!r}" in output
    kinds = [int(number) for number in re.findall(r"写出 (\d) 种", output)]
    assert kinds[:4] == [1, 1, 1, 1] and kinds[5] > 1
    assert output.count("　与 generate_text_simple 相同") >= 4
    assert "写两遍：相同；与贪心不同" in output


def test_5_3_can_fail(project, mini):
    """忘了 model.eval()：换个种子就写得不同，自查打 ✗。"""
    result = run(3, project, "--quick", change=lambda source: source.replace("    model.eval()\n", ""), ok=False)
    assert result.returncode == 0 and "✗ 温度 0 或 top_k=1" in result.stdout


def test_5_4(project, book):
    """与原书作者的 train_model_simple 从同一个检查点接着训练，印出的损失相同。"""
    output = run(4, project, "--quick")
    assert os.listdir(project / "ch05" / "outputs") == ["model_and_optimizer.pth"]
    content = torch.load(project / "ch05" / "outputs" / "model_and_optimizer.pth", weights_only=True)
    assert sorted(content) == ["config", "model", "optimizer"]
    before, batches, after = numbers(r"优化器接着数：(\d+) \+ (\d+) = (\d+) 步", output)
    train_loader, val_loader = loaders(book, STORY[:6000])
    assert f"走过 {before:.0f} 步，学习率 0.005" in output and batches == len(train_loader) and after == before + batches
    expected = []
    for with_optimizer in (True, False):
        torch.manual_seed(123)
        model = book["GPTModel"](content["config"])
        model.load_state_dict(content["model"])
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.1)
        if with_optimizer:
            optimizer.load_state_dict(content["optimizer"])
        start = book["evaluate_model"](model, train_loader, val_loader, CPU, None)
        losses = book["train_model_simple"](model, train_loader, val_loader, optimizer, CPU, 1, 5, None, "Every effort moves you", book["tokenizer"])
        expected.append([start[0], *(number for pair in zip(*losses[:2]) for number in pair)])
    starts = re.findall(r"出发时　训练损失 ([\d.]+)", output)
    steps = re.findall(r"第 +([05]) 步　训练损失 ([\d.]+)　验证损失 ([\d.]+)", output)
    assert [step[0] for step in steps] == ["0", "5"] * 2 and len(starts) == 2
    for start, pair, reference in zip(starts, (steps[:2], steps[2:]), expected):
        printed = [float(number) for number in (start, *pair[0][1:], *pair[1][1:])]
        assert printed == pytest.approx(reference, abs=1e-3)
    assert expected[0][0] < 6  # 存之前真的学到了东西
    assert expected[0][1] < expected[1][1] - 5e-3  # 读不读优化器，差别大得看得出来；新的优化器走得更差


def test_5_5_with_a_checkpoint(project, book, mini):
    output = run(5, project)
    assert "gpt_mini.pth" in output and "3.7547 / 3.5596" in output
    train, val = numbers(r"训练损失 ([\d.]+)　验证损失 ([\d.]+)", output)
    torch.manual_seed(123)  # 训练集打乱之后会丢掉凑不满的一批，丢的是哪一个由种子定
    with torch.no_grad():
        assert [train, val] == pytest.approx([book["calc_loss_loader"](loader, mini, CPU) for loader in loaders(book)], abs=1e-4)


def test_5_5_prefers_openai(project, book, mini):
    """有转换好的 124M 就量它；它不是 OpenAI 的那份，就不与书比。"""
    other = save_model(project / "ch05" / "outputs" / "gpt2-124M.pth", book, CONFIG | {"emb_dim": 32, "qkv_bias": True})
    for args in ([], ["--size", "124M"]):
        output = run(5, project, *args)
        assert "gpt2-124M.pth" in output and "与原书相同" not in output
    torch.manual_seed(123)
    with torch.no_grad():
        expected = [book["calc_loss_loader"](loader, other, CPU) for loader in loaders(book)]
    assert numbers(r"训练损失 ([\d.]+)　验证损失 ([\d.]+)", output) == pytest.approx(expected, abs=1e-4)


def test_5_6(project):
    output = run(6, project, "--quick")
    rows = re.findall(r"^ +(\d+M) +(\d+) +(\d+) +(\d+) +([\d,]+) +([\d.]+) GB +([\d.]+) GB", output, re.MULTILINE)
    assert [row[0] for row in rows] == ["124M", "355M", "774M", "1558M"]
    transformers = pytest.importorskip("transformers", reason="没有装 transformers，无法与它比较")
    for _, layers, width, heads, count, file, memory in rows:
        with torch.device("meta"):
            theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=int(layers), n_embd=int(width), n_head=int(heads)))
        assert theirs.num_parameters() == int(count.replace(",", "")) and int(width) == 64 * int(heads)
        assert float(file) == pytest.approx(4 * theirs.num_parameters() / 2**30, abs=0.06)
        untied = theirs.num_parameters() + 50257 * int(width)
        assert float(memory) == pytest.approx((4 * untied + int(layers) * 1024**2) / 2**30, abs=0.06)
    assert "把大的权重装进小的模型：模型有 2 块，权重有 4 块，不是一种规模" in output and "finding an ideal life" in output


def test_5_6_with_weights(project, book):
    """有权重就让它写：极小的随机模型，写的与原书作者的 generate 相同。"""
    model = save_model(project / "ch05" / "outputs" / "gpt2-355M.pth", book, CONFIG | {"qkv_bias": True}, sharper=1)
    output = run(6, project, "--size", "355M")
    torch.manual_seed(123)
    idx = torch.tensor([book["tokenizer"].encode("Every effort moves you")])
    out = book["generate"](model, idx, 25, 64, temperature=1.5, top_k=50)
    assert f"③ 355M 写的：{book['tokenizer'].decode(out[0].tolist())!r}" in output


@pytest.mark.parametrize("path", EXERCISES, ids=lambda path: path.name[:12])
def test_command_line(path, project, monkeypatch, capsys):
    """--help 有中文；写错参数、缺模型，退出码 2，没有 traceback；缺模型时说先运行什么。"""
    module = load(path)
    monkeypatch.delenv("LLM_DATA_DIR", raising=False)
    monkeypatch.setitem(vars(module), "__file__", str(project / "ch05" / "experiments" / path.name))
    cases = {("--help",): "", ("--nosuch",): "", ("多余的",): ""}
    if 'add_argument("--size"' in path.read_text(encoding="utf-8"):
        cases |= {("--size", "355M"): "请先运行 python ch05/main/gpt_download.py --size 355M", ("--size", "3B"): ""}
    if path.name[:12] in ("exercise_5_2", "exercise_5_3"):
        cases[()] = "请先运行 python ch05/main/gpt_train.py"
    for case, words in cases.items():
        monkeypatch.setattr(sys, "argv", [path.name, *case])
        with pytest.raises(SystemExit) as stopped:
            module.main()
        out, err = capsys.readouterr()
        if case == ("--help",):
            assert stopped.value.code == 0 and "练习 5." in out and err == ""
        else:
            assert stopped.value.code == 2 and out == "" and words in err.splitlines()[-1], (case, out, err)


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="没有 OpenAI 的 124M 权重：请先运行 ch05/main/gpt_download.py，把 gpt2-124M.pth 放进 LLM_DATA_DIR 指的文件夹")
def test_5_5_book_numbers():
    result = subprocess.run([sys.executable, str(find(5))], capture_output=True, encoding="utf-8", timeout=600)
    assert result.returncode == 0 and "✓ 与原书相同：3.7547 / 3.5596" in result.stdout, result.stdout + result.stderr
