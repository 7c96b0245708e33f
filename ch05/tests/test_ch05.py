"""第 5 章的测试：书上的数字、与独立实现的比较、弄断训练再接着训练、坏文件、坏输入。

运行：python -m pytest ch05/tests
需要原书的 the-verdict.txt 的测试，在没有设置 LLM_DATA_DIR 时跳过。
"""

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
    command = [sys.executable, str(MAIN / script), *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, encoding=encoding, timeout=timeout)


def complaint(err):
    """stderr 里除了进度条，应当只有一句中文；返回这句话。"""
    lines = [line for line in re.split(r"[\r\n]+", re.sub(r"(\] ?)(出错了)", r"\1\n\2", err)) if line.strip() and not line.startswith("训练:")]
    assert len(lines) == 1, err
    message = lines[0].removeprefix("出错了：").removesuffix("（用 --help 看用法）")
    assert message != lines[0] and re.search(r"[\u4e00-\u9fff]{2}", message) and "[Errno" not in message, err
    return message


@pytest.fixture(scope="module")
def tiny():
    return load(TESTS / "tiny_train.py")


@pytest.fixture(scope="module")
def gpt_train(tiny):
    return tiny.tiny_gpt_train()


@pytest.fixture(scope="module")
def gpt_generate():
    return load(MAIN / "gpt_generate.py")


@pytest.fixture(scope="module")
def tokenizer(gpt_generate):
    return gpt_generate.load_gpt2_tokenizer()


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
        return code, out, err + "".join(f"{warning.message}\n" for warning in caught)

    return call


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """一小段文本：极小配置下是 10 批训练、1 批验证。"""
    path = tmp_path_factory.mktemp("text") / "short.txt"
    path.write_text(STORY.read_text(encoding="utf-8")[:360], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def checkpoint(tiny, text, tmp_path_factory):
    """极小的配置训练出来的检查点。"""
    out = tmp_path_factory.mktemp("trained")
    command = [sys.executable, str(TESTS / "tiny_train.py"), "--text", str(text), "--out", str(out), "--device", "cpu"]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    return out / "gpt_mini.pth"


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
    "5-06 训练集": "  输入 (2, 256)　目标 (2, 256)　(b, t)\n" * 9 + "【5.1.3】验证集\n  输入 (2, 256)　目标 (2, 256)　(b, t)\n【",
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
    result = run("example_01_loss.py", cwd=tmp_path)
    assert result.returncode == 0 and "✗" not in result.stdout, result.stdout + result.stderr
    assert_in_order(LOSS, result.stdout)
    book = [7.4541e-05, 3.1061e-05, 1.1563e-05, 1.0337e-05, 5.6776e-05, 4.7559e-06]
    printed = numbers_after(result.stdout, "第 1 句目标的概率", 3) + numbers_after(result.stdout, "第 2 句目标的概率", 3)
    assert printed == pytest.approx(book, rel=5e-5)  # 5-03
    assert numbers_after(result.stdout, "困惑度　", 1)[0] == pytest.approx(48725.82, abs=0.5)
    assert numbers_after(result.stdout, "训练损失", 1)[0] == pytest.approx(10.98758347829183, abs=1e-4)  # 5-07
    assert numbers_after(result.stdout, "验证损失", 1)[0] == pytest.approx(10.98110580444336, abs=1e-4)


def test_5_1_with_other_text(tmp_path, monkeypatch, capsys):
    """没有原书数据时，用自带的文本：不核对只对原书成立的数。模型换小，省时间；与模型大小有关的三条因此不看。"""
    monkeypatch.delenv("LLM_DATA_DIR", raising=False)
    source = (MAIN / "example_01_loss.py").read_text(encoding="utf-8").replace('"context_length": 256}', '"context_length": 256, "emb_dim": 48, "n_layers": 1}')
    exec(compile(source, "example_01_loss.py", "exec"), {"__name__": "example_01", "__file__": str(MAIN / "example_01_loss.py")})
    output = capsys.readouterr().out
    assert "story-en.txt" in output and "5145" not in output
    wrong = [line for line in output.splitlines() if "✗" in line]
    assert len(wrong) == 3 and all("原书相同" in line for line in wrong), wrong
    # 没训练过的 GPT 不论大小，损失都约是 ln V 加上 logits 方差的一半
    assert numbers_after(output, "【5.1.3】训练损失", 1)[0] == pytest.approx(math.log(50257) + 1 / 6, abs=0.05)


def test_training_step(tmp_path):
    result = run("example_02_training_step.py", cwd=tmp_path, book=False)
    assert result.returncode == 0 and "✗" not in result.stdout, result.stdout + result.stderr
    assert "story-en.txt" in result.stdout and "train_model_simple" in result.stdout
    assert numbers_after(result.stdout, "梯度是一次的", 1) == [2.0]


@pytest.mark.parametrize("kind", ["没有检查点", "训练过的", "损坏的"])
def test_decoding(kind, checkpoint, tmp_path):
    """脚本单独拷出来也能运行；有训练过的模型就用，没有、坏了都换成小模型，并且说清楚。"""
    (tmp_path / "main").mkdir()
    script = shutil.copy(MAIN / "example_03_decoding.py", tmp_path / "main")
    (tmp_path / "outputs").mkdir()
    target = tmp_path / "outputs" / "gpt_mini.pth"
    if kind != "没有检查点":
        content = checkpoint.read_bytes()
        target.write_bytes(content if kind == "训练过的" else content[: len(content) // 2])
    if kind == "训练过的":  # 检查点的词表要和 GPT-2 的分词器对得上
        target.write_bytes(b"")
        save_gpt2_sized(checkpoint, target)
    result = run(script, cwd=tmp_path, threads="1")
    assert result.returncode == 0 and "✗" not in result.stdout, result.stdout + result.stderr
    assert ("用的是训练过的模型" if kind == "训练过的" else "用的是没训练过的小模型") in result.stdout
    assert (tmp_path / "outputs" / "temperature.png").stat().st_size > 10_000
    assert_in_order(DECODING, result.stdout)
    for title, counts in COUNTS.items():
        block = result.stdout[result.stdout.index(title.split(" ", 1)[1] + "，抽") :]
        assert re.findall(r"(\d+) × (\w+)", block)[:9] == [(str(count), word) for count, word in zip(counts, WORDS)], title


def save_gpt2_sized(checkpoint, target):
    """把极小的检查点改成 GPT-2 词表大小的，权重随机。"""
    module = load(MAIN / "gpt_train.py")
    content = torch.load(checkpoint, weights_only=True)
    content["config"] = content["config"] | {"vocab_size": 50257}
    torch.manual_seed(0)
    content["model"] = module.GPTModel(content["config"]).state_dict()
    torch.save(content, target)


@pytest.mark.parametrize("encoding", ["utf-8", "gbk"])
def test_save_load(encoding, tmp_path):
    result = run("example_04_save_load.py", cwd=tmp_path, encoding=encoding, threads="1")
    assert result.returncode == 0 and "✗" not in result.stdout, result.stdout + result.stderr
    assert result.stdout.count("（这一行是文件自己打印的") == 1  # 只有 weights_only=False 时执行了
    assert "拒绝，什么也没执行" in result.stdout and list(tmp_path.iterdir()) == []


# ---- 与独立实现比较 ----


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
def test_generate_agrees_with_reference(temperature, top_k, gpt_generate, reference):
    model = make_model(gpt_generate, vocab_size=500).eval()
    for seed in range(2):
        idx = torch.randint(500, (1, 5), generator=torch.Generator().manual_seed(seed))
        outputs = []
        for generate in (gpt_generate.generate, reference.generate):
            torch.manual_seed(seed)
            outputs.append(generate(model, idx, 40, context_size=32, temperature=temperature, top_k=top_k))
        assert torch.equal(*outputs) and outputs[0].shape == (1, 45)


def test_generate_stops_at_eos(gpt_generate, reference):
    model = make_model(gpt_generate, vocab_size=500).eval()
    idx = torch.tensor([[1, 2, 3]])
    greedy = gpt_generate.generate(model, idx, 10, context_size=32)
    eos_id = greedy[0, 6].item()
    ours = gpt_generate.generate(model, idx, 10, context_size=32, eos_id=eos_id)
    assert torch.equal(ours, reference.generate(model, idx, 10, context_size=32, eos_id=eos_id)) and eos_id not in ours[0, 3:]


def test_top_k_and_temperature_change_the_distribution(gpt_generate):
    """不看实现，只看结果：一个分数已知的假模型，抽很多次，频率应当等于按定义算出的概率。"""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])

    class Fixed(torch.nn.Module):
        out_head = types.SimpleNamespace(out_features=4)

        def forward(self, idx):
            return logits.expand(*idx.shape, 4)

    for temperature, top_k in [(1.0, None), (0.5, None), (4.0, None), (1.0, 2), (2.0, 3)]:
        torch.manual_seed(0)
        drawn = gpt_generate.generate(Fixed(), torch.zeros(8000, 1, dtype=torch.long), 1, 8, temperature, top_k)[:, 1]
        weights = [math.exp(value / temperature) if rank < (top_k or 4) else 0 for rank, value in enumerate(logits.tolist())]
        expected = torch.tensor(weights) / sum(weights)
        assert torch.allclose(torch.bincount(drawn, minlength=4) / 8000, expected, atol=0.02), (temperature, top_k)


@pytest.mark.parametrize("bad", [{"temperature": -0.1}, {"temperature": float("nan")}, {"top_k": 0}, {"top_k": -3}, {"top_k": 501}])
def test_generate_rejects(bad, gpt_generate):
    with pytest.raises(ValueError, match="[\u4e00-\u9fff]"):
        gpt_generate.generate(make_model(gpt_generate, vocab_size=500), torch.tensor([[1]]), 3, 32, **bad)


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

    monkeypatch.setattr(gpt_train, "load_gpt2_tokenizer", lambda: tokenizer)
    loader = gpt_train.create_dataloader_v1(STORY.read_text(encoding="utf-8")[:3000], 4, max_length=31, stride=31, shuffle=False)
    losses = []
    with torch.no_grad():
        for inputs, targets in loader:
            whole = torch.cat([inputs, targets[:, -1:]], dim=1)
            losses.append(theirs(whole, labels=whole).loss.item())
        ours = gpt_train.calc_loss_loader(loader, model, CPU)
    assert ours == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_loss_picture(gpt_train, tmp_path, monkeypatch):
    """有没有中文字体都画得出来，而且没有变成方框的字。"""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for name, answer in [("中文", None), ("英文", lambda: False)]:
            if answer:
                monkeypatch.setattr(gpt_train, "use_chinese_font", answer)
            gpt_train.plot_losses(torch.linspace(0, 2, 4), [1, 2, 3, 4], [4.0, 3.0, 2.0, 1.0], [4.0, 3.5, 3.2, 3.3], tmp_path / f"{name}.png")
            assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


# ---- 真正的训练，从头到尾 ----


def test_quick_training_then_generate(tmp_path):
    """mini 的 --quick 走完全程，再用它的检查点生成。"""
    result = run("gpt_train.py", "--quick", "--out", tmp_path, "--device", "cpu", cwd=tmp_path)
    assert result.returncode == 0 and "✗" not in result.stdout and "Traceback" not in result.stderr, result.stdout + result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpt_mini.pth", "loss_mini.png"]
    assert (tmp_path / "loss_mini.png").stat().st_size > 10_000
    losses = [float(number) for number in re.findall(r"第 +\d+ 步　训练损失 ([\d.]+)", result.stdout)]
    assert losses and losses[-1] < 11.1

    texts = []
    for args in [[], ["--temperature", "1.4", "--top-k", "25"], ["--temperature", "1.4", "--top-k", "25", "--seed", "7"]]:
        again = run("gpt_generate.py", "--from-file", tmp_path / "gpt_mini.pth", "--max-new-tokens", "12", *args, cwd=tmp_path)
        assert again.returncode == 0 and "✗" not in again.stdout, again.stdout + again.stderr
        assert "Every effort moves you" in again.stdout
        texts.append(again.stdout.split("\n\n")[1])
    assert len(set(texts)) == 3


@needs_book
@pytest.mark.skipif(sys.platform == "win32", reason="要用信号提前结束训练")
def test_first_step_of_the_book_run(tmp_path):
    """原书 5.2 节那次 124M 的训练，只看训练前的损失和第 0 步（整次要好几分钟）：9.781 / 9.933，各平台略有差别。"""
    command = [sys.executable, str(MAIN / "gpt_train.py"), "--size", "124M", "--device", "cpu", "--out", str(tmp_path)]
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


# ---- 弄断训练，再接着训练 ----


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
        assert chain == {"退出码": 0, "不同": [], "剩下的": ["gpt_mini.pth"]}

    # ② 正写检查点时 kill -9（写到一半；写完还没改名）：上一次的检查点还在。
    for trial in trials["指定"]:
        assert trial["被杀"] == -signal.SIGKILL and trial["留下 .part"], trial
        assert trial["留下的步"] == trial["应留下"], trial
        assert trial["续训"] == 0 and trial["不同"] == [] and trial["剩下的"] == ["gpt_mini.pth"], trial
    first = trials["指定"][0]
    assert first["没有检查点时 --resume"] == 2 and "找不到检查点" in complaint(first["报错"])

    # ③ 训练完再 --resume，什么都不变；加大 --epochs，与一口气练那么多轮相同。
    assert trials["训练完再续"] == [0, []] and trials["加到 5 轮"] == [0, 0, []]

    # ④ 磁盘满：一句中文，退出码 2，旧的检查点完好，不留半个文件。
    full = trials["磁盘满"]
    assert full["退出码"] == 2 and full["旧的完好"] and full["剩下的"] == ["gpt_mini.pth"]
    assert "写不进" in complaint(full["报错"])


@pytest.mark.skipif(sys.platform == "win32", reason="Windows 上发不出 Ctrl-C 信号")
def test_ctrl_c(gpt_train, text, tmp_path, command_line):
    """训练途中按 Ctrl-C：没有 Traceback，告诉读者怎样接着训练，而且真的接得上。"""
    command = [sys.executable, str(TESTS / "tiny_train.py"), "--text", str(text), "--out", str(tmp_path), "--save-every", "0", "--device", "cpu"]
    process = subprocess.Popen([*command, "--epochs", "1000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", env=os.environ | {"PYTHONUNBUFFERED": "1"})
    for line in process.stdout:
        if "第  15 步" in line:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert "--resume" in out.splitlines()[-1] and str(tmp_path / "gpt_mini.pth") in out
    code, out, _ = command_line(gpt_train, "--text", text, "--out", tmp_path, "--device", "cpu", "--resume", "--epochs", 3)
    assert code == 0 and "接着" in out


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
    for key in ("seed", "text", "initial"):
        files[f"没有 {key}"] = folder / f"no_{key}.pth"
        torch.save({name: value for name, value in content.items() if name != key}, files[f"没有 {key}"])
    files["文件夹"] = folder / "folder.pth"
    files["文件夹"].mkdir()
    files["不存在"] = folder / "absent.pth"
    return files


def test_generate_refuses_bad_checkpoints(gpt_generate, checkpoint, tmp_path, command_line):
    good = tmp_path / "good.pth"
    save_gpt2_sized(checkpoint, good)
    files = bad_checkpoints(good, tmp_path) | {"词表太小": checkpoint}
    harmless = ("没有 ", "缺内容4", "缺内容5", "缺内容6")  # 生成用不到优化器、进度、种子，读得出来也可以
    for name, path in files.items():
        code, out, err = command_line(gpt_generate, "--from-file", path, "--max-new-tokens", 2)
        if not name.startswith(harmless):
            assert code == 2 and out == "", name
            complaint(err)
    assert not (tmp_path / "executed").exists()


def test_resume_refuses_bad_checkpoints(gpt_train, checkpoint, text, tmp_path, command_line):
    (tmp_path / "bad").mkdir()
    for number, (name, path) in enumerate(bad_checkpoints(checkpoint, tmp_path / "bad").items()):
        out_folder = tmp_path / f"out{number}"
        out_folder.mkdir()
        if path.is_file():
            shutil.copy(path, out_folder / "gpt_mini.pth")
        before = {item.name: item.read_bytes() for item in out_folder.iterdir()}
        code, _, err = command_line(gpt_train, "--resume", "--text", text, "--out", out_folder, "--device", "cpu")
        assert code == 2, name
        complaint(err)
        assert {item.name: item.read_bytes() for item in out_folder.iterdir()} == before, name
    assert not (tmp_path / "bad" / "executed").exists()


def test_load_checkpoint_on_damaged_bytes(gpt_train, checkpoint, tmp_path):
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
                content = gpt_train.load_checkpoint(path)
            assert {"config", "model", "optimizer", "progress"} <= content.keys()
        except ValueError as error:
            refused += 1
            assert re.search("[\u4e00-\u9fff]", str(error))
    assert refused > 500


# ---- 坏输入 ----


def test_train_refuses(gpt_train, text, tmp_path, command_line):
    story = text.read_text(encoding="utf-8")
    files = {"空的": b"", "空白": b" \n\n", "二进制": b"abc\0def" * 100, "GBK": ("风吹过山谷。" * 100).encode("gbk"), "太短": story[:80].encode(), "够训练不够验证": story[:120].encode()}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    cases = [["--text", tmp_path / name] for name in files]
    cases += [["--text", tmp_path / "没有这个文件"], ["--text", tmp_path]]
    cases += [[*bad] for bad in (["--epochs", 0], ["--epochs", -1], ["--epochs", "两轮"], ["--size", "3B"], ["--nosuch"], ["--epoch", 3], ["--device", "tpu"], ["--seed", 10**30], ["--seed"])]
    cases += [["--device", name] for name, found in [("mps", torch.backends.mps.is_available()), ("cuda", torch.cuda.is_available())] if not found]
    for case in cases:
        out = tmp_path / "out"
        given = case if "--text" in case else ["--text", text, *case]
        code, printed, err = command_line(gpt_train, *given, *([] if "--device" in case else ["--device", "cpu"]), "--out", out)
        assert code == 2, (case, printed)
        complaint(err)
        assert not out.exists() or list(out.iterdir()) == [], case


def test_train_refuses_to_resume_another_training(gpt_train, checkpoint, text, tmp_path, command_line, monkeypatch):
    shutil.copy(checkpoint, tmp_path / "gpt_mini.pth")
    other = tmp_path / "other.txt"
    other.write_text(text.read_text(encoding="utf-8") + "!", encoding="utf-8")
    for case in (["--text", other], ["--text", text, "--seed", 124]):
        code, _, err = command_line(gpt_train, "--resume", *case, "--out", tmp_path, "--device", "cpu")
        assert code == 2 and "接不上" in complaint(err)
    monkeypatch.setitem(gpt_train.MODEL_CONFIGS["mini"], "n_layers", 1)
    code, _, err = command_line(gpt_train, "--resume", "--text", text, "--out", tmp_path, "--device", "cpu")
    assert code == 2 and "接不上" in complaint(err)
    assert (tmp_path / "gpt_mini.pth").read_bytes() == checkpoint.read_bytes()


def test_out_is_a_file(gpt_train, text, tmp_path, command_line):
    (tmp_path / "file").write_text("我是一个文件", encoding="utf-8")
    for out in (tmp_path / "file", tmp_path / "file" / "inside"):
        code, _, err = command_line(gpt_train, "--text", text, "--out", out, "--device", "cpu")
        assert code == 2
        complaint(err)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "我是一个文件"


def test_generate_refuses(gpt_generate, checkpoint, tmp_path, command_line):
    good = tmp_path / "gpt.pth"
    save_gpt2_sized(checkpoint, good)
    code, out, err = command_line(gpt_generate, "--from-file", good, "--max-new-tokens", 3)
    assert code == 0 and "✗" not in out and err == ""
    cases = [["--temperature", -1], ["--temperature", "nan"], ["--temperature", "热"], ["--top-k", 0], ["--top-k", -1], ["--top-k", 50258], ["--max-new-tokens", 0], ["--prompt", ""]]
    cases += [["--prompt", "word " * 17], ["--nosuch"], ["--size", "3B"], ["--device", "tpu"], ["--seed", 10**30], ["--prompt"]]
    for case in cases:
        code, out, err = command_line(gpt_generate, "--from-file", good, *case)
        assert code == 2 and out == "", case
        complaint(err)


def test_help_is_chinese(gpt_train, gpt_generate, command_line):
    for module in (gpt_train, gpt_generate):
        code, out, _ = command_line(module, "--help")
        assert code == 0 and out.startswith("用法：")
        for flag in re.findall(r'add_argument\("(--[\w-]+)"', inspect.getsource(module)):
            assert flag in out


# ---- 说明 ----


def test_readme_lists_every_script():
    readme = (TESTS.parent / "README.md").read_text(encoding="utf-8")
    missing = [path.name for path in MAIN.glob("*.py") if path.name not in readme]
    assert not missing
    sections = [f"5.1.{n}" for n in (1, 2, 3)] + ["5.2"] + [f"5.3.{n}" for n in (1, 2, 3)] + ["5.4", "5.5"]
    assert all(section in readme for section in sections)


