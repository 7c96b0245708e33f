"""第 5 章的测试：书上的数字、与独立实现的比较、弄断训练再接着训练、坏文件、坏输入。5.5 节的在 test_gpt2_weights.py。

运行：python -m pytest ch05/tests
需要原书的 the-verdict.txt 的测试，在没有设置 LLM_DATA_DIR 时跳过。
"""

import ast
import importlib.util
import inspect
import json
import math
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

TESTS = Path(__file__).resolve().parent
MAIN = TESTS.parent / "main"
MINI = TESTS.parent / "outputs" / "gpt_mini.pth"
STORY = TESTS.parents[1] / "setup" / "data" / "story-en.txt"
BOOK = Path(os.environ.get("LLM_DATA_DIR", "no-such-folder")) / "the-verdict.txt"
needs_book = pytest.mark.skipif(not BOOK.is_file(), reason="没有原书的 the-verdict.txt：请让 LLM_DATA_DIR 指向它所在的文件夹")
CPU = torch.device("cpu")
WORDS = "closer every effort forward inches moves pizza toward you".split()


def load(path):
    """按路径导入一个脚本。"""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(script, *args, cwd, encoding="utf-8", book=True, threads="1", timeout=900):
    """在另一个文件夹里运行脚本，就像读者在终端里那样。"""
    env = {key: value for key, value in os.environ.items() if book or key != "LLM_DATA_DIR"}
    env |= {"PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": threads}
    command = [sys.executable, str(TESTS.parent / script), *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, encoding=encoding, timeout=timeout)


def complaint(err):
    """stderr 的最后一行应当是一句中文，没有 Traceback；返回这句话。"""
    last = err.strip().splitlines()[-1]
    assert re.search(r"[\u4e00-\u9fff]{2}", last) and "Traceback" not in err and "[Errno" not in last, err
    return last.split("error: ", 1)[-1]


def rejected(err):
    """argparse 自己拒绝的参数：英文的一句，没有 Traceback。"""
    assert "error: " in err.strip().splitlines()[-1] and "Traceback" not in err, err


def component(script, *wanted):
    """从一个逐步讲解里只取几个函数，不运行它。"""
    tree = ast.parse((MAIN / script).read_text(encoding="utf-8"))
    names = {"torch": torch, "nn": torch.nn}
    exec(compile(ast.Module([node for node in tree.body if getattr(node, "name", None) in wanted], []), script, "exec"), names)
    return types.SimpleNamespace(**{name: names[name] for name in wanted})


@pytest.fixture(scope="module")
def tiny():
    return load(TESTS / "tiny_train.py")


@pytest.fixture
def gpt_train(tiny, tmp_path):
    """极小配置的 gpt_train.py；文件写到 tmp_path/outputs。"""
    return tiny.tiny("main/gpt_train.py", tmp_path / "outputs")


@pytest.fixture(scope="module")
def exp_resume(tiny):
    return tiny.tiny("experiments/exp_resume.py")


@pytest.fixture(scope="module")
def decoding():
    return component("example_03_decoding.py", "generate", "softmax_with_temperature")


@pytest.fixture(scope="module")
def tokenizer():
    return load(MAIN / "gpt_train.py").tiktoken.get_encoding("gpt2")


@pytest.fixture(scope="module")
def reference():
    return pytest.importorskip("llms_from_scratch.ch05", reason="没有装 llms-from-scratch，无法与它比较")


@pytest.fixture
def command_line(monkeypatch, capsys):
    """command_line(模块, 参数…) → 退出码、stdout、stderr；没有被接住的异常会让测试失败。"""

    def call(module, *args):
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, args)])
        with warnings.catch_warnings(record=True) as caught:  # 真的运行时，警告也会印到 stderr 上
            warnings.simplefilter("always")
            try:
                module.main()
                code = 0
            except SystemExit as error:
                code = error.code
        out, err = capsys.readouterr()
        return code, out, "".join(f"{warning.message}\n" for warning in caught) + err

    return call


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """一小段文本：极小配置下是 10 批训练、1 批验证。"""
    path = tmp_path_factory.mktemp("text") / "short.txt"
    path.write_text(STORY.read_text(encoding="utf-8")[:360], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def checkpoint(tiny, text, tmp_path_factory):
    """exp_resume.py 用极小的配置训练出来的检查点。"""
    out = tmp_path_factory.mktemp("trained")
    command = [sys.executable, str(TESTS / "tiny_train.py"), "experiments/exp_resume.py", str(out), "--train", "--text", str(text), "--device", "cpu"]
    subprocess.run([*command, "--out", str(out)], check=True, capture_output=True, timeout=600)
    return out / "resume_tiny.pth"


# ---- 书上的数字：按小节的次序出现在脚本的输出里 ----

LOSS = {
    "5-01": "Every effort moves you rentingetic wasnم refres RexMeCHicular stren",
    "5-02 形状": "(2, 3, 50257)",
    "5-02 编号": "tensor([[[16657],\n         [  339],\n         [42826]],\n\n        [[49906],\n         [29669],\n         [41751]]])",
    "5-02 目标": " effort moves you",
    "5-02 猜的": " Armed heNetflix",
    "5-04 对数": "tensor([ -9.5042, -10.3796, -11.3677, -11.4798,  -9.7764, -12.2561])",
    "5-04 平均": "tensor(-10.7940)",
    "5-04 取负": "tensor(10.7940)",
    "5-04 展平": "(6, 50257)、(6,)",
    "5-04 交叉熵": "tensor(10.7940)",
    "5-04 犹豫": "4.9 万个词元",
    "5-05 开头": "I HAD always thought Jack Gisburn rather a cheap genius--though a good fellow enough--so it was no ",
    "5-05 结尾": "it for me! The Strouds stand alone, and happen once--but there\\'s no exterminating our kind of art.\"",
    "5-05 字符": "20479",
    "5-05 词元": "5145",
    "5-06 训练集": "  输入 (2, 256)　目标 (2, 256)　(b, t)\n" * 9 + "验证集\n  输入 (2, 256)　目标 (2, 256)　(b, t)\n训练用",
    "5-06 训练词元": "4608",
    "5-06 验证词元": "512",
    "5-06 合计": "5120",
}
DECODING = {
    "5-12 argmax": "forward",
    "5-12 抽一次": "forward",
    "5-15 前三名": "tensor([6.7500, 6.2800, 4.5100])",
    "5-15 位置": "tensor([3, 7, 0])",
    "5-15 挡掉": "tensor([4.5100,   -inf,   -inf, 6.7500,   -inf,   -inf,   -inf, 6.2800,   -inf])",
    "5-15 归一化": "tensor([0.0615, 0.0000, 0.0000, 0.5775, 0.0000, 0.0000, 0.0000, 0.3610, 0.0000])",
}
COUNTS = {"5-13 温度 1": [73, 0, 0, 582, 2, 0, 0, 343, 0], "5-14 温度 0.1": [0, 0, 0, 985, 0, 0, 0, 15, 0], "5-14 温度 5": [165, 75, 42, 239, 71, 46, 32, 227, 103]}


def assert_in_order(expected, output):
    """expected 里的每一项，依次出现在 output 里。"""
    position = 0
    for name, piece in expected.items():
        found = output.find(piece, position)
        assert found >= 0, f"{name} 没有按次序出现：{piece!r}"
        position = found + len(piece)


def numbers_after(output, title, count):
    """title 之后的前几个数。"""
    return [float(number) for number in re.findall(r"-?\d+\.?\d*(?:e[+-]\d+)?", output[output.index(title) + len(title) :])[:count]]


@needs_book
def test_book_numbers_of_5_1(tmp_path):
    result = run("main/example_01_loss.py", cwd=tmp_path)
    assert result.returncode == 0 and "✗" not in result.stdout, result.stdout + result.stderr
    assert_in_order(LOSS, result.stdout)
    book = [7.4541e-05, 3.1061e-05, 1.1563e-05, 1.0337e-05, 5.6776e-05, 4.7559e-06]
    printed = numbers_after(result.stdout, "第 1 句目标的概率", 3) + numbers_after(result.stdout, "第 2 句目标的概率", 3)
    assert printed == pytest.approx(book, rel=5e-5)  # 5-03
    assert numbers_after(result.stdout, "困惑度", 1)[0] == pytest.approx(48725.82, abs=0.5)
    assert numbers_after(result.stdout, "训练前　训练损失", 2) == pytest.approx([10.98758347829183, 10.98110580444336], abs=1e-4)  # 5-07


def test_5_1_with_other_text(monkeypatch, capsys):
    """没有原书数据时，用自带的文本：不核对只对原书成立的数。模型换小，省时间；与模型大小有关的三条因此不看。"""
    monkeypatch.delenv("LLM_DATA_DIR", raising=False)
    source = (MAIN / "example_01_loss.py").read_text(encoding="utf-8")
    source = source.replace('"context_length": CONTEXT_LENGTH}', '"context_length": CONTEXT_LENGTH, "emb_dim": 48, "n_layers": 1}')
    exec(compile(source, "example_01_loss.py", "exec"), {"__name__": "example_01", "__file__": str(MAIN / "example_01_loss.py")})
    output = capsys.readouterr().out
    assert "story-en.txt" in output and "5145" not in output
    wrong = [line for line in output.splitlines() if "✗" in line]
    assert len(wrong) == 3 and all("原书相同" in line for line in wrong), wrong
    # 没训练过的 GPT 不论大小，损失都约是 ln V 加上 logits 方差的一半
    assert numbers_after(output, "训练前　训练损失", 1)[0] == pytest.approx(math.log(50257) + 1 / 6, abs=0.05)


# ---- 5.2–5.4：逐步讲解 ----


def test_training_loop(tmp_path, monkeypatch, capsys):
    """模型换小、只训练两轮：走完全程，每条自查都对，图画得出来，第 0 步之后的损失小了。"""
    monkeypatch.delenv("LLM_DATA_DIR", raising=False)
    config = {"vocab_size": 50257, "context_length": 256, "emb_dim": 32, "n_heads": 2, "n_layers": 2, "drop_rate": 0.1, "qkv_bias": False}
    source = (MAIN / "example_02_training_loop.py").read_text(encoding="utf-8")
    source, count = re.subn(r"^CONFIG = \{.*?^\}$", f"CONFIG = {config}", source, flags=re.MULTILINE | re.DOTALL)
    assert count == 1
    for name, value in {"NUM_EPOCHS": 2, "LEARNING_RATE": 1e-2, "OUTPUTS": str(tmp_path)}.items():
        replaced = f"{name} = Path({value!r})" if name == "OUTPUTS" else f"{name} = {value!r}"
        source, count = re.subn(rf"^{name} = .*$", replaced, source, flags=re.MULTILINE)
        assert count == 1, name
    names = {"__name__": "example_02", "__file__": str(MAIN / "example_02_training_loop.py")}
    exec(compile(source, "example_02_training_loop.py", "exec"), names)
    output = capsys.readouterr().out
    assert "✗" not in output and output.count("  ✓ ") == 7, output
    assert "story-en.txt" in output and numbers_after(output, "梯度是一次的", 1) == [2.0]
    assert numbers_after(output, "输出层的每个权重平均挪了", 1)[0] == pytest.approx(1e-2, rel=0.1)  # AdamW 的第一步约走一个学习率
    assert (tmp_path / "training_loop.png").stat().st_size > 10_000
    assert [int(step) for step in re.findall(r"第 +(\d+) 步　训练损失", output)] == [0, 5, 10, 15]


@pytest.mark.parametrize("name", ["example_02_training_loop", "example_03_decoding", "example_05_openai_weights"])
def test_notebook_writes_inside_the_project(name, monkeypatch):
    """笔记本里没有 __file__：从项目根目录、ch05/main 运行，图片都写到 ch05/outputs。"""
    source = (MAIN / f"{name}.py").read_text(encoding="utf-8")
    lines = re.findall(r"^(?:here|OUTPUTS) = .*$", source, flags=re.MULTILINE)
    for folder in (MAIN.parents[1], MAIN.parent, MAIN):
        monkeypatch.chdir(folder)
        names = {"Path": Path}
        exec("\n".join(lines), names)
        assert names["OUTPUTS"].resolve() == MAIN.resolve().parent / "outputs", folder


def test_train_model_simple_is_the_books():
    """书上的参数，一个不多；代码不超过 30 行。"""
    tree = ast.parse((MAIN / "example_02_training_loop.py").read_text(encoding="utf-8"))
    function = next(node for node in tree.body if getattr(node, "name", "") == "train_model_simple")
    book = "model, train_loader, val_loader, optimizer, device, num_epochs, eval_freq, eval_iter, start_context, tokenizer"
    assert ast.unparse(function.args) == book
    function.body = function.body[1:]  # 文档不算
    assert len({node.lineno for node in ast.walk(function) if hasattr(node, "lineno")}) <= 30


@pytest.mark.skipif(not MINI.is_file(), reason="没有训练过的 mini：先运行 python ch05/main/gpt_train.py")
def test_decoding(tmp_path, capsys):
    """用训练过的 mini；图写到别处，读者的不动。"""
    source = (MAIN / "example_03_decoding.py").read_text(encoding="utf-8")
    source, count = re.subn(r"^OUTPUTS = .*$", f"OUTPUTS = Path({str(tmp_path)!r})", source, flags=re.MULTILINE)
    assert count == 1
    exec(compile(source, "example_03_decoding.py", "exec"), {"__name__": "example_03", "__file__": str(MAIN / "example_03_decoding.py")})
    output = capsys.readouterr().out
    assert "✗" not in output, output
    assert (tmp_path / "temperature.png").stat().st_size > 10_000
    assert_in_order(DECODING, output)
    for title, counts in COUNTS.items():
        block = output[output.index(title.split(" ", 1)[1] + "，抽") :]
        assert re.findall(r"(\d+) × (\w+)", block)[:9] == [(str(count), word) for count, word in zip(counts, WORDS)], title


def test_decoding_without_mini(tmp_path):
    """没有 mini：一句话说运行哪条命令，退出码 2，不擅自训练。脚本抄到别的项目里运行，那里只有词表和自带的数据。"""
    (tmp_path / "ch05" / "main").mkdir(parents=True)
    (tmp_path / "setup").mkdir()
    for name in ("data", "downloads"):
        (tmp_path / "setup" / name).symlink_to(TESTS.parents[1] / "setup" / name)
    script = shutil.copy(MAIN / "example_03_decoding.py", tmp_path / "ch05" / "main")
    result = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=300, env=os.environ | {"LLM_DATA_DIR": str(tmp_path)})
    assert result.returncode == 2 and result.stdout == "" and "gpt_train.py" in complaint(result.stderr)
    assert not (tmp_path / "ch05" / "outputs").exists()


@pytest.mark.parametrize("book", [False, pytest.param(True, marks=needs_book)])
def test_save_load(book, tmp_path):
    result = run("main/example_04_save_load.py", cwd=tmp_path, book=book)
    assert result.returncode == 0 and "✗" not in result.stdout, result.stdout + result.stderr
    assert result.stdout.count("（这一行是文件自己打印的") == 1  # 只有 weights_only=False 时执行了
    assert "拒绝，什么也没执行" in result.stdout and list(tmp_path.iterdir()) == []
    assert numbers_after(result.stdout, "没有中断过平均差", 1)[0] > 0.02


# ---- 与独立实现比较 ----


def save_gpt2_sized(checkpoint, target):
    """把极小的检查点改成 GPT-2 词表大小的，权重随机。"""
    content = torch.load(checkpoint, weights_only=True)
    content["config"] = content["config"] | {"vocab_size": 50257}
    torch.manual_seed(0)
    content["model"] = load(MAIN / "gpt_train.py").GPTModel(content["config"]).state_dict()
    torch.save(content, target)


def make_model(module, seed=0, vocab_size=50257, drop_rate=0.0, qkv_bias=False):
    torch.manual_seed(seed)
    config = {"vocab_size": vocab_size, "context_length": 32, "emb_dim": 32, "n_heads": 4, "n_layers": 2, "drop_rate": drop_rate, "qkv_bias": qkv_bias}
    return module.GPTModel(config)


def make_loaders(module, tiny, length=16):
    """极小配置的数据：一个字节一个词元。"""
    story = STORY.read_text(encoding="utf-8")[:800]
    train = module.create_dataloader_v1(story[:600], 2, max_length=length, stride=length)
    val = module.create_dataloader_v1(story[600:], 2, max_length=length, stride=length, shuffle=False, drop_last=False)
    return train, val


def test_text_and_ids_agree_with_reference(gpt_train, reference, tokenizer):
    for sample in ["Every effort moves you", "你好，世界。", "a<|endoftext|>b", "  two  spaces\n"]:
        ids = gpt_train.text_to_token_ids(sample, tokenizer)
        assert torch.equal(ids, reference.text_to_token_ids(sample, tokenizer)) and ids.shape[0] == 1
        assert gpt_train.token_ids_to_text(ids, tokenizer) == reference.token_ids_to_text(ids, tokenizer) == sample


@pytest.mark.parametrize("num_batches", [None, 1, 3, 1000])
def test_losses_agree_with_reference(num_batches, gpt_train, reference, tiny):
    model = make_model(gpt_train, vocab_size=256).eval()
    _, loader = make_loaders(gpt_train, tiny)
    ours = gpt_train.calc_loss_loader(loader, model, CPU, num_batches)
    assert ours == pytest.approx(reference.calc_loss_loader(loader, model, CPU, num_batches), abs=1e-6)


def test_loss_of_empty_loader_is_nan(gpt_train):
    assert math.isnan(gpt_train.calc_loss_loader([], None, CPU))


@pytest.mark.parametrize("length", [8, 16])
def test_training_agrees_with_reference(length, gpt_train, reference, tiny, capsys):
    """同样的起点、同样的种子（有打乱、有 dropout），逐步训练两遍：损失、权重、随机数的位置都相同。"""
    results = []
    for train in (gpt_train.train_model_simple, reference.train_model_simple):
        model = make_model(gpt_train, seed=3, vocab_size=256, drop_rate=0.1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.1)
        loaders = make_loaders(gpt_train, tiny, length)
        torch.manual_seed(5)
        losses = train(model, *loaders, optimizer, CPU, 2, 3, 2, "Every effort", tiny.BYTES)
        results.append((losses, [p.detach() for p in model.parameters()], torch.get_rng_state(), model.training))
    (ours, weights, state, mode), (theirs, their_weights, their_state, their_mode) = results
    assert ours[2] == theirs[2] and len(ours[0]) > 8
    assert ours[0] == pytest.approx(theirs[0], abs=1e-5) and ours[1] == pytest.approx(theirs[1], abs=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(weights, their_weights))
    assert torch.equal(state, their_state) and mode == their_mode
    assert ours[0][-1] < ours[0][0] - 1


def test_evaluate_model_turns_dropout_off_and_on_again(gpt_train, tiny):
    model = make_model(gpt_train, vocab_size=256, drop_rate=0.5).train()
    train_loader, val_loader = make_loaders(gpt_train, tiny)
    _, first = gpt_train.evaluate_model(model, train_loader, val_loader, CPU, 5)
    _, second = gpt_train.evaluate_model(model, train_loader, val_loader, CPU, 5)
    assert first == second and model.training
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("temperature", "top_k"), [(0.0, None), (0.0, 5), (1.0, None), (0.1, None), (1.4, 25), (5.0, 3), (1.0, 1), (100.0, 2), (1.0, 500)]
)
def test_generate_agrees_with_reference(temperature, top_k, gpt_train, decoding, reference):
    model = make_model(gpt_train, vocab_size=500).eval()
    for seed in range(2):
        idx = torch.randint(500, (1, 5), generator=torch.Generator().manual_seed(seed))
        outputs = []
        for generate in (decoding.generate, reference.generate):
            torch.manual_seed(seed)
            outputs.append(generate(model, idx, 40, context_size=32, temperature=temperature, top_k=top_k))
        assert torch.equal(*outputs) and outputs[0].shape == (1, 45)


def test_generate_stops_at_eos(gpt_train, decoding, reference):
    model = make_model(gpt_train, vocab_size=500).eval()
    idx = torch.tensor([[1, 2, 3]])
    greedy = decoding.generate(model, idx, 10, context_size=32)
    eos_id = greedy[0, 6].item()
    ours = decoding.generate(model, idx, 10, context_size=32, eos_id=eos_id)
    assert torch.equal(ours, reference.generate(model, idx, 10, context_size=32, eos_id=eos_id)) and eos_id not in ours[0, 3:]


def test_top_k_and_temperature_change_the_distribution(decoding):
    """不看实现，只看结果：一个分数已知的假模型，抽很多次，频率应当等于按定义算出的概率。"""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])

    class Fixed(torch.nn.Module):
        out_head = types.SimpleNamespace(out_features=4)

        def forward(self, idx):
            return logits.expand(*idx.shape, 4)

    for temperature, top_k in [(1.0, None), (0.5, None), (4.0, None), (1.0, 2), (2.0, 3)]:
        torch.manual_seed(0)
        drawn = decoding.generate(Fixed(), torch.zeros(8000, 1, dtype=torch.long), 1, 8, temperature, top_k)[:, 1]
        weights = [math.exp(value / temperature) if rank < (top_k or 4) else 0 for rank, value in enumerate(logits.tolist())]
        expected = torch.tensor(weights) / sum(weights)
        assert torch.allclose(torch.bincount(drawn, minlength=4) / 8000, expected, atol=0.02), (temperature, top_k)


@pytest.mark.parametrize("bad", [{"temperature": -0.1}, {"temperature": float("nan")}, {"top_k": 0}, {"top_k": -3}, {"top_k": 501}])
def test_generate_rejects(bad, gpt_train, decoding):
    with pytest.raises(ValueError, match="[\u4e00-\u9fff]"):
        decoding.generate(make_model(gpt_train, vocab_size=500), torch.tensor([[1]]), 3, 32, **bad)


def test_generate_several_rows_each_with_its_own_end(gpt_train, decoding):
    """一批几句，与一句一句地生成相同：先写完的后面只填结束词元，全都写完才停。"""
    model = make_model(gpt_train, vocab_size=500).eval()
    rows = torch.randint(500, (4, 5), generator=torch.Generator().manual_seed(3))
    long = decoding.generate(model, rows, 20, context_size=32)
    ends = []
    for eos_id in [long[0, 7].item(), long[1, 12].item(), long[2, 5].item()]:
        alone = [decoding.generate(model, row[None], 20, context_size=32, eos_id=eos_id)[0, 5:].tolist() for row in rows]
        together = decoding.generate(model, rows, 20, context_size=32, eos_id=eos_id)[:, 5:].tolist()
        width = max(map(len, alone))
        assert together == [words + [eos_id] * (width - len(words)) for words in alone]
        ends.append({len(words) for words in alone})
    assert all(len(lengths) > 1 for lengths in ends)  # 真的有先写完的

    prompt = torch.tensor([[eos_id], [eos_id]])  # 提示词里有结束词元，不算写完
    assert decoding.generate(model, prompt, 3, context_size=32, eos_id=eos_id).shape == (2, 4)


def test_loss_agrees_with_transformers(gpt_train, tokenizer, monkeypatch):
    """把权重搬进 transformers 的 GPT-2，它自己移位、自己算损失：两边应当相等，所以目标确实右移了一位。"""
    transformers = pytest.importorskip("transformers", reason="没有装 transformers，无法与它比较")
    model = make_model(gpt_train, seed=7, qkv_bias=True).eval()
    settings = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": 32, "resid_pdrop": 0, "attn_pdrop": 0, "embd_pdrop": 0, "tie_word_embeddings": False}
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=50257, activation_function="gelu_new", **settings)).eval()
    state = {"transformer.wte.weight": model.tok_emb.weight, "transformer.wpe.weight": model.pos_emb.weight, "lm_head.weight": model.out_head.weight}
    for number, block in enumerate(model.trf_blocks):
        qkv = (block.att.W_query, block.att.W_key, block.att.W_value)
        layer = {
            "ln_1.weight": block.norm1.scale, "ln_1.bias": block.norm1.shift, "ln_2.weight": block.norm2.scale, "ln_2.bias": block.norm2.shift,
            "attn.c_attn.weight": torch.cat([linear.weight.T for linear in qkv], dim=1), "attn.c_attn.bias": torch.cat([linear.bias for linear in qkv]),
            "attn.c_proj.weight": block.att.out_proj.weight.T, "attn.c_proj.bias": block.att.out_proj.bias,
            "mlp.c_fc.weight": block.ff.layers[0].weight.T, "mlp.c_fc.bias": block.ff.layers[0].bias,
            "mlp.c_proj.weight": block.ff.layers[2].weight.T, "mlp.c_proj.bias": block.ff.layers[2].bias,
        }  # fmt: skip
        state |= {f"transformer.h.{number}.{name}": value for name, value in layer.items()}
    state |= {"transformer.ln_f.weight": model.final_norm.scale, "transformer.ln_f.bias": model.final_norm.shift}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and all("attn.bias" in name or "masked_bias" in name for name in missing)

    monkeypatch.setattr(gpt_train, "tiktoken", types.SimpleNamespace(get_encoding=lambda name: tokenizer))
    loader = gpt_train.create_dataloader_v1(STORY.read_text(encoding="utf-8")[:3000], 4, max_length=31, stride=31, shuffle=False)
    losses = []
    with torch.no_grad():
        for inputs, targets in loader:
            whole = torch.cat([inputs, targets[:, -1:]], dim=1)
            losses.append(theirs(whole, labels=whole).loss.item())
        ours = gpt_train.calc_loss_loader(loader, model, CPU)
    assert ours == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_loss_picture(gpt_train, tmp_path):
    """画得出来，而且没有变成方框的字。"""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        figure = gpt_train.plot_losses(torch.linspace(0, 2, 4), [1, 2, 3, 4], [4.0, 3.0, 2.0, 1.0], [4.0, 3.5, 3.2, 3.3])
        figure.savefig(tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    bottom, top = figure.axes
    assert bottom.get_xlabel() == "轮（epoch）" and top.get_xlabel() == "看过的词元数"


# ---- 真正的训练，从头到尾 ----


def test_quick_training_then_generate(tmp_path, command_line):
    """mini 的 --quick 走完全程，三次评估的损失不变；再用它存下的权重生成。"""
    module = load(MAIN / "gpt_train.py")
    module.OUTPUTS = tmp_path / "outputs"
    code, out, err = command_line(module, "--quick", "--text", STORY, "--device", "cpu")
    assert code == 0 and "✗" not in out, out + err
    assert sorted(path.name for path in module.OUTPUTS.iterdir()) == ["gpt_mini_story-en_quick.pth", "loss_mini_story-en_quick.png"]
    assert (module.OUTPUTS / "loss_mini_story-en_quick.png").stat().st_size > 10_000
    losses = [float(number) for pair in re.findall(r"第 +\d+ 步　训练损失 ([\d.]+)　验证损失 ([\d.]+)", out) for number in pair]
    assert losses == pytest.approx([10.563, 10.652, 9.117, 9.272, 7.948, 8.145], abs=0.02)
    content = torch.load(module.OUTPUTS / "gpt_mini_story-en_quick.pth", weights_only=True)
    assert content.keys() == {"config", "model"} and content["config"] == module.MODEL_CONFIGS["mini"]
    module.GPTModel(content["config"]).load_state_dict(content["model"])

    texts = []
    for args in [[], ["--temperature", "1.4", "--top-k", "25"], ["--temperature", "1.4", "--top-k", "25", "--seed", "7"]]:
        again = run("main/gpt_generate.py", "--from-file", module.OUTPUTS / "gpt_mini_story-en_quick.pth", "--max-new-tokens", "12", *args, cwd=tmp_path)
        assert again.returncode == 0 and "✗" not in again.stdout, again.stdout + again.stderr
        assert "Every effort moves you" in again.stdout
        texts.append(again.stdout.split("\n\n")[1])
    assert len(set(texts)) == 3


@needs_book
@pytest.mark.skipif(sys.platform == "win32", reason="要用信号提前结束训练")
def test_first_step_of_the_book_run():
    """原书 5.2 节那次 124M 的训练，只看训练前的损失和第 0 步（整次要好几分钟）：9.781 / 9.933，各平台略有差别。"""
    command = [sys.executable, str(MAIN / "gpt_train.py"), "--size", "124M", "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8", env=os.environ | {"PYTHONUNBUFFERED": "1"})
    seen = []
    try:
        for line in process.stdout:
            seen.append(line)
            if "第   0 步" in line:
                break
    finally:
        process.kill()
        process.wait()
    output = "".join(seen)
    assert "162,419,712" in output  # 上下文从 1024 缩短到 256，位置嵌入少了 768 × 768 个参数
    assert numbers_after(output, "训练前　训练损失", 2) == pytest.approx([10.988, 10.981], abs=1e-3)
    assert numbers_after(output, "步　训练损失", 2) == pytest.approx([9.781, 9.933], abs=0.05)


def test_looking_first_does_not_change_the_training(gpt_train, text, command_line, capsys):
    """训练前看的那一眼不影响后面：与不看、直接训练的逐位相同。"""
    code, out, err = command_line(gpt_train, "--text", text, "--device", "cpu")
    assert code == 0, out + err
    story = text.read_text(encoding="utf-8")
    split = int(0.90 * len(story))
    torch.manual_seed(123)
    model = gpt_train.GPTModel(gpt_train.MODEL_CONFIGS["mini"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    train_loader = gpt_train.create_dataloader_v1(story[:split], 2, max_length=16, stride=16)
    val_loader = gpt_train.create_dataloader_v1(story[split:], 2, max_length=16, stride=16, shuffle=False, drop_last=False)
    gpt_train.train_model_simple(model, train_loader, val_loader, optimizer, CPU, 3, 5, 5, "Every effort moves you", gpt_train.tiktoken.get_encoding("gpt2"))
    saved = torch.load(gpt_train.OUTPUTS / "gpt_mini_short.pth", weights_only=True)["model"]
    assert all(torch.equal(saved[name], tensor) for name, tensor in model.state_dict().items())


def test_not_finite_loss_stops_the_training(gpt_train, text, command_line, monkeypatch):
    """学习率大得离谱：第一个不是有限数的损失就停下，一句中文，不存文件；已有的不动。"""
    gpt_train.OUTPUTS.mkdir()
    (gpt_train.OUTPUTS / "gpt_mini_short.pth").write_bytes(b"old")
    monkeypatch.setitem(gpt_train.TRAIN_SETTINGS["mini"], "learning_rate", 1e30)
    code, out, err = command_line(gpt_train, "--text", text, "--device", "cpu")
    assert code == 2 and re.search("第 1 步的损失是 (nan|inf)", complaint(err)), out + err
    assert {path.name: path.read_bytes() for path in gpt_train.OUTPUTS.iterdir()} == {"gpt_mini_short.pth": b"old"}


@pytest.mark.parametrize("error", [OSError, RuntimeError])
def test_broken_save_leaves_the_old_file(error, gpt_train, text, command_line, monkeypatch):
    """写到一半出错（磁盘满，torch.save 报的是 RuntimeError）：旧的权重还在，不留半个文件，图也没有换。"""
    gpt_train.OUTPUTS.mkdir()
    (gpt_train.OUTPUTS / "gpt_mini_short_1.pth").write_bytes(b"old")

    def save(content, path):
        Path(path).write_bytes(b"half")
        raise error("unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", save)
    code, _, err = command_line(gpt_train, "--text", text, "--device", "cpu", "--epochs", 1)
    assert code == 2 and "磁盘满了" in complaint(err)
    assert {path.name: path.read_bytes() for path in gpt_train.OUTPUTS.iterdir()} == {"gpt_mini_short_1.pth": b"old"}


def test_trials_do_not_replace_the_mini(gpt_train, text, command_line):
    """换了文本、轮数，或加了 --quick：存成另外的名字。gpt_mini.pth 只由默认的训练写。"""
    for case in ([], ["--epochs", 1], ["--quick"], ["--size", "124M", "--quick"]):
        assert command_line(gpt_train, "--text", text, "--device", "cpu", *case)[0] == 0
    names = sorted(path.name for path in gpt_train.OUTPUTS.glob("*.pth"))
    assert names == ["gpt_124M_short_quick.pth", "gpt_mini_short.pth", "gpt_mini_short_1.pth", "gpt_mini_short_quick.pth"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows 上发不出 Ctrl-C 信号")
@pytest.mark.parametrize("script", ["main/gpt_train.py", "experiments/exp_resume.py"])
def test_ctrl_c(script, text, tmp_path, exp_resume, command_line):
    """训练途中按 Ctrl-C：没有 Traceback，告诉读者留下了什么；exp_resume.py 真的接得上。"""
    resumable = script == "experiments/exp_resume.py"
    flags = ["--train", "--out", str(tmp_path), "--save-every", "0"] if resumable else []
    command = [sys.executable, str(TESTS / "tiny_train.py"), script, str(tmp_path), "--text", str(text), "--device", "cpu", *flags]
    restore = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731　在后台启动的 shell 会忽略 SIGINT，子进程也跟着忽略
    process = subprocess.Popen(
        [*command, "--epochs", "1000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", env=os.environ | {"PYTHONUNBUFFERED": "1"}, preexec_fn=restore
    )
    for line in process.stdout:
        if "第  15 步" in line:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130 and "Traceback" not in err, err
    last = out.strip().splitlines()[-1]
    if not resumable:
        assert "训练完才存" in last and list(tmp_path.iterdir()) == []
        return
    assert "--resume" in last and str(tmp_path / "resume_tiny.pth") in last
    code, out, _ = command_line(exp_resume, "--train", "--text", text, "--out", tmp_path, "--device", "cpu", "--resume", "--epochs", 3)
    assert code == 0 and "接着" in out


# ---- 弄断训练，再接着训练 ----


def test_resume_demo(tmp_path, tiny, monkeypatch, capsys):
    """演示从头到尾，配置换成极小的：真的杀死一个进程，真的接上，每条自查都对。"""
    module = tiny.tiny("experiments/exp_resume.py", tmp_path)
    short = tmp_path / "short.txt"
    short.write_text(STORY.read_text(encoding="utf-8")[:360], encoding="utf-8")

    def popen(command, **options):  # 子进程也要用极小的配置
        assert command[1] == module.__file__
        tiny_command = [command[0], str(TESTS / "tiny_train.py"), "experiments/exp_resume.py", str(tmp_path), *command[2:], "--text", str(short)]
        return subprocess.Popen(tiny_command, **options)

    monkeypatch.setattr(module, "subprocess", types.SimpleNamespace(Popen=popen, PIPE=subprocess.PIPE))
    monkeypatch.setattr(module, "find_data", lambda *_: short)
    module.KILL_AT = 15
    monkeypatch.setattr(sys, "argv", ["exp_resume.py"])
    module.main()
    out = capsys.readouterr().out
    assert "✗" not in out and out.count("  ✓ ") == 5, out
    assert "最多差 0.0e+00" in out and (tmp_path / "resume.png").stat().st_size > 10_000


def test_resume_diff_is_a_lesson():
    """copy_forward.py diff 印出它比书上的循环多了什么：每一处都有说明。"""
    command = [sys.executable, str(TESTS.parents[1] / "setup" / "copy_forward.py")]
    script = str(TESTS.parent / "experiments" / "exp_resume.py")
    assert subprocess.run([*command, "check", script], capture_output=True).returncode == 0
    shown = subprocess.run([*command, "diff", script], capture_output=True, encoding="utf-8", env=os.environ | {"PYTHONIOENCODING": "utf-8"}).stdout
    added = [line for line in shown.splitlines() if line.startswith("+")]
    assert "train_model_simple" in shown and any("get_rng_state" in line for line in added) and any("save(p)" in line for line in added)
    assert len(added) <= 30 and sum("改：" in line for line in added) >= 7


@pytest.mark.skipif(not hasattr(os, "fork"), reason="这些试验要用 fork，Windows 上没有")
def test_interrupted_training(text, tmp_path):
    """在各种时刻弄断训练，再接着训练：结果与没断过的逐位相同。试验在 kill_trials.py 里，放在一个测试里只跑一遍。"""
    command = [sys.executable, str(TESTS / "kill_trials.py"), str(text), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=900)
    assert result.returncode == 0, result.stdout + result.stderr
    trials = json.loads(result.stdout.splitlines()[-1])

    # ① 随机的时刻 kill -9：正式文件名下永远是完整的检查点，接着训练完，不留下别的文件。
    assert trials["完整的一次"] == 0 and trials["存过的步"] == 29 and trials["杀死次数"] >= 5
    for chain in trials["随机"]:
        assert chain == {"退出码": 0, "不同": [], "剩下的": ["resume_tiny.pth"]}

    # ② 正写检查点时 kill -9（写到一半；写完还没改名）：上一次的检查点还在。
    for trial in trials["指定"]:
        assert trial["被杀"] == -signal.SIGKILL and trial["留下 .part"], trial
        assert trial["留下的步"] == trial["应留下"], trial
        assert trial["续训"] == 0 and trial["不同"] == [] and trial["剩下的"] == ["resume_tiny.pth"], trial
    first = trials["指定"][0]
    assert first["没有检查点时 --resume"] == 2 and "找不到检查点" in complaint(first["报错"])

    # ③ 训练完再 --resume，什么都不变；加大 --epochs，与一口气练那么多轮相同。
    assert trials["训练完再续"] == [0, []] and trials["加到 5 轮"] == [0, 0, []]

    # ④ 磁盘满：一句中文，退出码 2，旧的检查点完好，不留半个文件。
    full = trials["磁盘满"]
    assert full["退出码"] == 2 and full["旧的完好"] and full["剩下的"] == ["resume_tiny.pth"]
    assert "写不进" in complaint(full["报错"])


# ---- 坏的检查点 ----


class Dangerous:
    """读它的人会建一个文件：用来看代码有没有被执行。"""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def bad_checkpoints(good, folder):
    """各种坏掉的检查点：名字 → 文件。"""
    data, content = good.read_bytes(), torch.load(good, weights_only=True)
    files = {name: folder / f"{name}.pth" for name in ["空的", "截断", "乱码", "文本", "夹带代码", "夹带代码的权重", "safetensors", "别的项目", "只有权重", "配置不对", "不是字典"]}
    files["空的"].write_bytes(b"")
    files["截断"].write_bytes(data[: len(data) * 2 // 3])
    files["乱码"].write_bytes(random.Random(1).randbytes(5000))
    files["文本"].write_text("这不是检查点\n" * 100, encoding="utf-8")
    files["夹带代码"].write_bytes(pickle.dumps(Dangerous(folder / "executed")))
    torch.save(content | {"model": Dangerous(folder / "executed")}, files["夹带代码的权重"])
    save_file(content["model"], files["safetensors"])
    torch.save(torch.nn.Linear(3, 3).state_dict(), files["别的项目"])
    torch.save(content["model"], files["只有权重"])
    torch.save(content | {"config": content["config"] | {"emb_dim": 32}}, files["配置不对"])
    torch.save([1, 2, 3], files["不是字典"])
    for number, (key, value) in enumerate({"config": {}, "config ": [], "model": {}, "model ": [1], "optimizer": {}, "progress": {}, "progress ": None}.items()):
        files[f"缺内容{number}"] = folder / f"missing{number}.pth"
        torch.save(content | {key.strip(): value}, files[f"缺内容{number}"])
    for key in ("seed", "text"):
        files[f"没有 {key}"] = folder / f"no_{key}.pth"
        torch.save({name: value for name, value in content.items() if name != key}, files[f"没有 {key}"])
    files["文件夹"] = folder / "folder.pth"
    files["文件夹"].mkdir()
    files["不存在"] = folder / "absent.pth"
    return files


def test_generate_refuses_bad_checkpoints(checkpoint, tmp_path, command_line):
    gpt_generate = load(MAIN / "gpt_generate.py")
    harmless = ("没有 ", "缺内容4", "缺内容5", "缺内容6")  # 生成用不到优化器、进度、种子，读得出来也可以
    save_gpt2_sized(checkpoint, tmp_path / "good.pth")
    for name, path in bad_checkpoints(tmp_path / "good.pth", tmp_path).items():
        code, out, err = command_line(gpt_generate, "--from-file", path, "--max-new-tokens", 2)
        if not name.startswith(harmless):
            assert code == 2 and out == "", name
            complaint(err)
    assert not (tmp_path / "executed").exists()


def test_generate_strips_prefixes(checkpoint, tmp_path, command_line):
    """编译过的、多卡训练的模型，名字前面多一截：去掉，并且说一声；写出的与原来的相同。"""
    gpt_generate = load(MAIN / "gpt_generate.py")
    save_gpt2_sized(checkpoint, tmp_path / "good.pth")
    good = torch.load(tmp_path / "good.pth", weights_only=True)
    texts = {}
    for prefix in ("", "_orig_mod.", "module._orig_mod."):
        torch.save(good | {"model": {prefix + name: tensor for name, tensor in good["model"].items()}}, tmp_path / "prefixed.pth")
        code, texts[prefix], err = command_line(gpt_generate, "--from-file", tmp_path / "prefixed.pth", "--max-new-tokens", 3)
        assert code == 0, err
    assert "去掉了" not in texts[""] and "多出来的 _orig_mod. 去掉了" in texts["_orig_mod."] and "_orig_mod.、module. 去掉了" in texts["module._orig_mod."]
    assert len({text[text.index("策略") :] for text in texts.values()}) == 1


def test_resume_refuses_bad_checkpoints(exp_resume, checkpoint, text, tmp_path, command_line):
    (tmp_path / "bad").mkdir()
    for number, (name, path) in enumerate(bad_checkpoints(checkpoint, tmp_path / "bad").items()):
        out_folder = tmp_path / f"out{number}"
        out_folder.mkdir()
        if path.is_file():
            shutil.copy(path, out_folder / "resume_tiny.pth")
        before = {item.name: item.read_bytes() for item in out_folder.iterdir()}
        code, _, err = command_line(exp_resume, "--train", "--resume", "--text", text, "--out", out_folder, "--device", "cpu")
        assert code == 2, name
        complaint(err)
        assert {item.name: item.read_bytes() for item in out_folder.iterdir()} == before, name
    assert not (tmp_path / "bad" / "executed").exists()


def test_load_checkpoint_on_damaged_bytes(exp_resume, checkpoint, tmp_path):
    """截断、改几个字节、换掉一段、拼凑的 pickle，几百种：要么读出四项齐全的内容，要么是一句中文的 ValueError，别无其他。"""
    data, rng, path, refused = checkpoint.read_bytes(), random.Random(2), tmp_path / "x.pth", 0
    start = data.index(b"data.pkl")  # 开头的 pickle 部分最容易出各种异常
    opcodes = b"()}]tdsuebqhrR.NK\x85\x86\x87c\x93X"
    for trial in range(800):
        damaged = bytearray(data)
        if trial % 4 == 0:
            damaged = damaged[: rng.randrange(len(damaged))]
        elif trial % 4 == 1:
            for _ in range(rng.randrange(1, 6)):
                damaged[start + rng.randrange(6000)] = rng.randrange(256)
        elif trial % 4 == 2:
            place = start + rng.randrange(6000)
            damaged[place : place + rng.randrange(30)] = rng.randbytes(rng.randrange(30))
        else:
            damaged = b"\x80\x02" + bytes(rng.choice(opcodes) for _ in range(rng.randrange(40))) + b"."
        path.write_bytes(damaged)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                content = exp_resume.load_checkpoint(path)
            assert {"config", "model", "optimizer", "progress"} <= content.keys()
        except ValueError as error:
            refused += 1
            assert re.search("[\u4e00-\u9fff]", str(error))
    assert refused > 500


# ---- 坏输入 ----


def test_train_refuses(gpt_train, exp_resume, text, tmp_path, command_line):
    """坏的文本、坏的参数：退出码 2，没有 Traceback，不留下文件。gpt_train.py 和 exp_resume.py 都一样。"""
    story = text.read_text(encoding="utf-8")
    files = {"空的": b"", "空白": b" \n\n", "二进制": b"abc\0def" * 100, "GBK": ("风吹过山谷。" * 100).encode("gbk"), "太短": story[:80].encode(), "够训练不够验证": story[:150].encode()}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    cases = [["--text", tmp_path / name] for name in [*files, "没有这个文件", "."]] + [["--epochs", 0], ["--epochs", -1], ["--device", "tpu"]]
    cases += [["--device", name] for name, found in [("mps", torch.backends.mps.is_available()), ("cuda", torch.cuda.is_available())] if not found]
    english = [["--epochs", "两轮"], ["--size", "3B"], ["--nosuch"], ["--text"]]  # argparse 自己拒绝的
    for module in (gpt_train, exp_resume):
        extra = ["--train", "--out", gpt_train.OUTPUTS] if module is exp_resume else []
        for case in [*cases, *english]:
            given = case if "--text" in case else ["--text", text, *case]
            code, printed, err = command_line(module, *extra, *given, *([] if "--device" in case else ["--device", "cpu"]))
            assert code == 2, (case, printed)
            (rejected if case in english else complaint)(err)
            assert not gpt_train.OUTPUTS.exists() or list(gpt_train.OUTPUTS.iterdir()) == [], case


def test_resume_flags_need_train(exp_resume, command_line):
    """忘了 --train，不会悄悄地去跑演示。"""
    code, out, err = command_line(exp_resume, "--resume")
    assert code == 2 and out == "" and "--train" in complaint(err)


def test_train_refuses_to_resume_another_training(exp_resume, checkpoint, text, tmp_path, command_line, monkeypatch):
    shutil.copy(checkpoint, tmp_path / "resume_tiny.pth")
    other = tmp_path / "other.txt"
    other.write_text(text.read_text(encoding="utf-8") + "!", encoding="utf-8")
    for case in (["--text", other], ["--text", text, "--seed", 124]):
        code, _, err = command_line(exp_resume, "--train", "--resume", *case, "--out", tmp_path, "--device", "cpu")
        assert code == 2 and "接不上" in complaint(err)
    monkeypatch.setitem(exp_resume.MODEL_CONFIGS["tiny"], "n_layers", 1)
    code, _, err = command_line(exp_resume, "--train", "--resume", "--text", text, "--out", tmp_path, "--device", "cpu")
    assert code == 2 and "接不上" in complaint(err)
    assert (tmp_path / "resume_tiny.pth").read_bytes() == checkpoint.read_bytes()


def test_generate_refuses(checkpoint, tmp_path, command_line):
    gpt_generate = load(MAIN / "gpt_generate.py")
    good = tmp_path / "gpt.pth"
    save_gpt2_sized(checkpoint, good)
    code, out, err = command_line(gpt_generate, "--from-file", good, "--max-new-tokens", 3)
    assert code == 0 and "✗" not in out and err == ""
    for case in [["--temperature", -1], ["--temperature", "nan"], ["--top-k", 0], ["--top-k", -1], ["--top-k", 50258]]:
        code, out, err = command_line(gpt_generate, "--from-file", good, *case)
        assert code == 2 and out == "", case
        complaint(err)
    for case in [["--temperature", "热"], ["--nosuch"], ["--size", "3B"], ["--prompt"]]:
        code, out, err = command_line(gpt_generate, "--from-file", good, *case)
        assert code == 2 and out == "", case
        rejected(err)


def test_help_is_chinese(gpt_train, exp_resume, command_line):
    for module in (gpt_train, exp_resume):
        code, out, _ = command_line(module, "--help")
        assert code == 0
        for flag in re.findall(r'add_argument\("(--[\w-]+)"', inspect.getsource(module)):
            explained = out[out.rindex(f"  {flag}") :]
            assert re.search("[\u4e00-\u9fff]", explained.split("\n  --")[0]), flag


# ---- 说明 ----


def test_readme_lists_every_script():
    readme = (TESTS.parent / "README.md").read_text(encoding="utf-8")
    missing = [path.name for path in MAIN.glob("*.py") if path.name not in readme]
    assert not missing
    sections = [f"5.1.{n}" for n in (1, 2, 3)] + ["5.2"] + [f"5.3.{n}" for n in (1, 2, 3)] + ["5.4", "5.5"]
    assert all(section in readme for section in sections)


