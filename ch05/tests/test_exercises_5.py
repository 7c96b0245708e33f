"""第 5 章的练习：每一道都从头跑到尾，读它印出来的数，与 llms-from-scratch、transformers 的实现比较。

运行：python -m pytest ch05/tests/test_exercises_5.py
不需要原书的数据和权重。每个脚本都拷到一个临时的小项目里运行，读者训练过的模型、下载过的权重，都影响不到结果。
"""

import hashlib
import importlib.util
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
EXERCISES = sorted((ROOT / "ch05" / "experiments").glob("exercise_5_*.py"))
STORY = (ROOT / "setup" / "data" / "story-en.txt").read_text(encoding="utf-8-sig")[:7000]  # 用开头的三分之一，测试才快
WEIGHTS = Path(os.environ.get("LLM_DATA_DIR", "no-such-folder")) / "gpt2-124M.safetensors"
CONFIG = {"vocab_size": 50257, "context_length": 64, "emb_dim": 16, "n_heads": 2, "n_layers": 1, "drop_rate": 0.1, "qkv_bias": False}
TINY = {"n_vocab": 50257, "n_ctx": 64, "n_embd": 48, "n_head": 4, "n_layer": 2}
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
    """一个临时的小项目：只有自带文本的开头。"""
    for folder in ("ch05/experiments", "ch05/outputs", "setup/data"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "setup" / "data" / "story-en.txt").write_text(STORY, encoding="utf-8", newline="")
    return tmp_path


def run(number, project, *args, change=lambda source: source, ok=True):
    """在临时的小项目里运行一道练习，返回它印的；change 可以先改一改源代码。"""
    script = project / "ch05" / "experiments" / find(number).name
    script.write_text(change(find(number).read_text(encoding="utf-8")), encoding="utf-8")
    env = {key: value for key, value in os.environ.items() if key != "LLM_DATA_DIR"} | {"PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}
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
    """原书作者的实现，分词器换成不联网的。"""
    pytest.importorskip("llms_from_scratch.ch05", reason="没有装 llms-from-scratch，无法与它比较")
    import tiktoken
    from llms_from_scratch import ch02, ch04, ch05

    tokenizer = load(ROOT / "ch05" / "main" / "gpt_train.py").load_gpt2_tokenizer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiktoken, "get_encoding", lambda name: tokenizer)
        yield {**vars(ch02), **vars(ch04), **vars(ch05), "tokenizer": tokenizer}


def save_mini(project, book):
    """像 gpt_train.py 那样存一个极小的检查点：走过几步，优化器有记忆。"""
    gpt_train = load(ROOT / "ch05" / "main" / "gpt_train.py")
    torch.manual_seed(0)
    model = gpt_train.GPTModel(CONFIG)
    with torch.no_grad():
        model.out_head.weight *= 8  # 让它有主见，贪心和采样才不同
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    ids = torch.tensor(book["tokenizer"].encode(STORY))
    for step in range(5):
        optimizer.zero_grad()
        gpt_train.calc_loss_batch(ids[step * 64 : step * 64 + 64][None], ids[step * 64 + 1 : step * 64 + 65][None], model, CPU).backward()
        optimizer.step()
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "progress": {}}
    content = {"config": CONFIG, "seed": 123, "text": hashlib.sha256(STORY.encode()).hexdigest(), "initial": (11.0, 11.0), **states}
    torch.save(content, project / "ch05" / "outputs" / "gpt_mini.pth")
    theirs = book["GPTModel"](CONFIG).eval()
    theirs.load_state_dict(content["model"])
    return theirs, content


def loaders(book, share=1.0, length=64):
    """原书的数据加载器，切法与练习相同。"""
    split, make = int(0.9 * len(STORY)), book["create_dataloader_v1"]
    train = make(STORY[: int(split * share)], batch_size=2, max_length=length, stride=length, num_workers=0)
    return train, make(STORY[split:], batch_size=2, max_length=length, stride=length, shuffle=False, drop_last=False, num_workers=0)


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


def test_5_2(project, book):
    model, _ = save_mini(project, book)
    output = run(2, project, "--quick")
    assert "gpt_train.py 训练的" in output
    rows = re.findall(r"温度 ([\d.]+)　top-k (\S+)　不同的 (\d+) 段　重复 (\d+)%　选中的概率 (\S+)", output)
    assert [row[:2] for row in rows] == [("0.0", "不限"), ("0.5", "不限"), ("1.0", "不限"), ("1.4", "25"), ("5.0", "25"), ("5.0", "不限")]
    assert rows[0][2] == "1" and rows[-1][2] == "4"
    probability = {row[:2]: float(row[4]) for row in rows}
    # 贪心那一组，用原书的 generate 再写一遍，照定义算
    idx = torch.tensor([book["tokenizer"].encode("Every effort moves you")])
    out = book["generate"](model, idx, 20, context_size=64)
    with torch.no_grad():
        log_probas = torch.log_softmax(model(out), dim=-1)
    chosen = [log_probas[0, place - 1, out[0, place]].item() for place in range(idx.shape[1], out.shape[1])]
    assert probability["0.0", "不限"] == pytest.approx(math.exp(sum(chosen) / 20), rel=0.06)  # 只印了两位
    assert repr(book["tokenizer"].decode(out[0, idx.shape[1] :].tolist())) in output
    assert probability["0.5", "不限"] > probability["1.0", "不限"] > probability["5.0", "不限"] and probability["5.0", "25"] > probability["5.0", "不限"]


def test_5_3(project, book):
    model, _ = save_mini(project, book)
    output = run(3, project, "--quick")
    idx = torch.tensor([book["tokenizer"].encode("Every effort moves you")])
    greedy = book["generate_text_simple"](model, idx, 8, 64)
    assert f"贪心　{book['tokenizer'].decode(greedy[0].tolist())!r}" in output
    kinds = [int(number) for number in re.findall(r"写出 (\d) 种", output)]
    assert kinds[:4] == [1, 1, 1, 1] and kinds[5] > 1
    assert output.count("　与 generate_text_simple 相同") >= 4
    assert "写两遍：相同；与贪心不同" in output


def test_5_4(project, book):
    """与原书作者的 train_model_simple 从同一个检查点接着训练，印出的损失相同。"""
    _, content = save_mini(project, book)
    output = run(4, project, "--quick")
    assert "走过 5 步，学习率 0.01" in output
    expected = []
    for with_optimizer in (True, False):
        train_loader, val_loader = loaders(book, 0.34)
        torch.manual_seed(123)
        model = book["GPTModel"](CONFIG)
        model.load_state_dict(content["model"])
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
        if with_optimizer:
            optimizer.load_state_dict(content["optimizer"])
        start = book["evaluate_model"](model, train_loader, val_loader, CPU, None)
        losses = book["train_model_simple"](model, train_loader, val_loader, optimizer, CPU, 1, 5, None, "Every effort moves you", book["tokenizer"])
        expected.append([start[0], *(number for pair in zip(*losses[:2]) for number in pair)])
    starts = re.findall(r"出发时　训练损失 ([\d.]+)", output)
    steps = re.findall(r"第 +([05]) 步　训练损失 ([\d.]+)　验证损失 ([\d.]+)", output)
    assert [step[0] for step in steps] == ["0", "0"] and len(starts) == 2  # 只有 4 批，走不到第 5 步
    for start, step, reference in zip(starts, steps, expected):
        printed = [float(start), *map(float, step[1:])]
        assert printed == pytest.approx(reference, abs=1e-3)
    assert expected[0][1] != pytest.approx(expected[1][1], abs=1e-2)  # 读不读优化器，差别大得看得出来


def test_5_4_without_checkpoint(project):
    output = run(4, project, "--quick")
    before, batches, after = numbers(r"优化器接着数：(\d+) \+ (\d+) = (\d+) 步", output)
    assert "当场训练的小模型" in output and before > 15 and after == before + batches
    assert numbers(r"出发时　训练损失 ([\d.]+)", output)[0] < 7  # 真的学到了东西
    assert not list((project / "ch05" / "outputs").iterdir())


def test_5_5_with_a_checkpoint(project, book):
    model, _ = save_mini(project, book)
    output = run(5, project)
    train, val = numbers(r"训练损失 ([\d.]+)　验证损失 ([\d.]+)", output)
    torch.manual_seed(123)  # 训练集打乱之后会丢掉凑不满的一批，丢的是哪一个由种子定
    with torch.no_grad():
        assert [train, val] == pytest.approx([book["calc_loss_loader"](loader, model, CPU) for loader in loaders(book)], abs=1e-4)


def test_5_5_trains_a_small_model(project):
    output = run(5, project, "--quick")
    assert "当场用 story-en.txt 的开头训练了" in output and "3.7547 / 3.5596" in output
    assert numbers(r"训练损失 ([\d.]+)", output)[0] < 9


def shrink(source):
    """把脚本里的 124M 换成极小的规模。"""
    for old, new in [
        ('"124M": {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12}', f'"124M": {TINY}'),
        ('"gpt2-small (124M)": {"emb_dim": 768, "n_layers": 12, "n_heads": 12}', '"gpt2-small (124M)": {"emb_dim": 48, "n_layers": 2, "n_heads": 4}'),
    ]:
        assert old in source
        source = source.replace(old, new)
    return source


def test_5_5_with_openai_weights(project, book):
    """OpenAI 格式的权重（极小、随机）：损失与 transformers 算的相同。"""
    transformers = pytest.importorskip("transformers", reason="没有装 transformers，无法与它比较")
    torch.manual_seed(0)
    settings = {"vocab_size": 50257, "n_positions": 64, "n_embd": 48, "n_head": 4, "n_layer": 2}
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    (project / "setup" / "downloads").mkdir()
    save_file({name: value.clone() for name, value in theirs.transformer.state_dict().items()}, project / "setup" / "downloads" / "gpt2-124M.safetensors")
    output = run(5, project, change=shrink)
    assert "OpenAI 格式的权重" in output
    printed = numbers(r"训练损失 ([\d.]+)　验证损失 ([\d.]+)", output)
    torch.manual_seed(123)
    for loader, loss in zip(loaders(book), printed):
        with torch.no_grad():
            losses = [torch.nn.functional.cross_entropy(theirs(inputs).logits.flatten(0, 1), targets.flatten()).item() for inputs, targets in loader]
        assert loss == pytest.approx(sum(losses) / len(losses), abs=2e-4)


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
    assert "是 大（4 层、64 维），不是 小" in output and "find an ideal life" not in output and "finding an ideal life" in output


def test_5_6_with_weights(project, monkeypatch):
    """有权重就让它写：极小的随机权重，写的与 transformers 用同样的抽法相同。"""
    module = load(find(6))
    (project / "setup" / "downloads").mkdir()
    module.make_random_file(TINY, project / "setup" / "downloads" / "gpt2-124M.safetensors")
    count = str(sum(math.prod(shape) for shape in module.gpt2_shapes(TINY).values()))
    output = run(6, project, "--size", "124M", change=lambda source: shrink(source).replace("124_439_808", count).replace("== 12.5,", "> 0,"))
    text = re.search(r"③ 让 124M 写\n +\S+safetensors\n +('.*'|\".*\")\n", output)[1]
    theirs = load(ROOT / "ch05" / "main" / "gpt_generate.py")
    monkeypatch.setitem(theirs.GPT2_SETTINGS, "124M", TINY)
    monkeypatch.setitem(theirs.SIZES, "124M", {"emb_dim": 48, "n_layers": 2, "n_heads": 4})
    model, config, _ = theirs.load_model(project / "setup" / "downloads" / "gpt2-124M.safetensors")
    tokenizer = theirs.load_gpt2_tokenizer()
    idx = theirs.text_to_token_ids("Every effort moves you", tokenizer)
    torch.manual_seed(123)
    out = theirs.generate(model.eval(), idx, 25, 64, temperature=1.5, top_k=50)
    assert text == repr(theirs.token_ids_to_text(out, tokenizer))


@pytest.mark.parametrize("path", EXERCISES, ids=lambda path: path.name[:12])
def test_command_line(path, project, monkeypatch, capsys):
    """--help 是中文；写错参数、缺文件，一句中文，退出码 2。"""
    module = load(path)
    monkeypatch.delenv("LLM_DATA_DIR", raising=False)
    monkeypatch.setitem(vars(module), "__file__", str(project / "ch05" / "experiments" / path.name))
    cases = [["--nosuch"], ["多余的"]]
    if "--size" in path.read_text(encoding="utf-8"):
        cases += [["--size", "355M"], ["--size", "3B"], ["--size"]]
    for case in [["--help"], *cases]:
        monkeypatch.setattr(sys, "argv", [path.name, *case])
        with pytest.raises(SystemExit) as stopped:
            module.main()
        out, err = capsys.readouterr()
        if case == ["--help"]:
            assert stopped.value.code == 0 and out.startswith("用法：") and err == ""
        else:
            assert stopped.value.code == 2 and out == "" and err.count("\n") == 1 and re.search("[\u4e00-\u9fff]{2}", err), (case, out, err)


@pytest.mark.skipif(not WEIGHTS.is_file() or WEIGHTS.stat().st_size != 548_105_171, reason="没有 OpenAI 的 124M 权重：请把 gpt2-124M.safetensors 放进 LLM_DATA_DIR 指的文件夹")
def test_5_5_book_numbers():
    result = subprocess.run([sys.executable, str(find(5))], capture_output=True, encoding="utf-8", timeout=600)
    assert result.returncode == 0 and "✓ 与原书相同：3.7547 / 3.5596" in result.stdout, result.stdout + result.stderr
