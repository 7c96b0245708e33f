"""第 7 章练习的测试：每个脚本跑一遍，读它印出来的数字；LoRA、遮住提示词、损失与独立的实现比较；坏参数、坏数据。

运行：python -m pytest ch07/tests/test_exercises_7.py
"""

import copy
import importlib.util
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
NAMES = ["exercise_7_1_phi3_prompt", "exercise_7_2_mask_instruction", "exercise_7_3_alpaca_52k", "exercise_7_4_lora"]
CPU = torch.device("cpu")
TINY = {"vocab_size": 50257, "context_length": 64, "emb_dim": 16, "n_heads": 2, "n_layers": 2, "drop_rate": 0.0, "qkv_bias": False}


def load(name):
    """按路径导入一个练习。"""
    spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def phi3():
    torch.set_num_threads(1)
    return load(NAMES[0])


@pytest.fixture(scope="module")
def masking():
    return load(NAMES[1])


@pytest.fixture(scope="module")
def lora():
    return load(NAMES[3])


@pytest.fixture(scope="module")
def reference():
    """llms_from_scratch 的第 7 章。它导入 psutil 只为了看 Ollama 开没开，这里用不到，没有装就放一个空的。"""
    sys.modules.setdefault("psutil", types.ModuleType("psutil"))
    return pytest.importorskip("llms_from_scratch.ch07", reason="没有装 llms-from-scratch")


@pytest.fixture(scope="module")
def data_file(tmp_path_factory):
    """一份小数据：60 条短的，加一条长得装不进上下文的。"""
    words = ["cat", "dog", "sun", "hat", "cup", "map"]
    entries = [{"instruction": f"Copy the word number {i}.", "input": words[i % 6] if i % 2 else "", "output": words[i % 6]} for i in range(60)]
    entries.insert(5, {"instruction": "long " * 1200, "input": "", "output": "no"})
    path = tmp_path_factory.mktemp("data") / "small.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", NAMES)
def test_quick_run(name, data_file, tmp_path):
    """在别的文件夹里，没有原书数据，--quick 从头跑到尾；每一句自查都成立，表格每行都有数。"""
    env = {key: value for key, value in os.environ.items() if key != "LLM_DATA_DIR"} | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, str(EXPERIMENTS / f"{name}.py"), "--quick", "--data", str(data_file), "--device", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    out = done.stdout
    assert "✗" not in out and out.count("✓") >= 3, out
    assert str(data_file) in out and "1 条太长没有用" in out and re.search("权重　.+（4 层，192 维）", out), out
    rows = re.findall(r"([\d.]+) +(\d+) +(\d+) +([\d.]+) / ?([\d.]+) +([\d.]+) / ?([\d.]+) +答对 +(\d+)%", out)
    assert len(rows) == (3 if "7_2" in name or "7_3" in name else 2), out
    for _, steps, _, before, _, after, _, _ in rows:
        assert int(steps) == 5 and float(after) < float(before), out  # 40 条，每批 8 条；只训练 5 步，损失也该降一点
    if "7_1" in name:
        assert "[27, 91, 7220, 91, 29]" in out
        assert float(rows[1][0]) < float(rows[0][0]) - 15  # 开场白和三个标题，至少二十来个词元
    if "7_2" in name:
        assert "'\\n\\n### Response:\\nCrocodile, Elephant, Zebra<|endoftext|>'" in out and "[3, 64]" in out
    if "7_3" in name:
        assert "训练 44,201 + 验证 2,601 + 测试 5,200" in out
    if "7_4" in name:
        assert "406,286,336 → 冻结之后 0 → 挂上 r = 16 的 LoRA 7,898,384" in out
    assert not list(tmp_path.iterdir()), "练习不该在当前文件夹里留下文件"


def test_lora_matches_reference(lora):
    """与 llms_from_scratch 的附录 E 比：同一个种子建出的 A 相同；它只乘 α，所以它的 α 应等于这里的 α/r。"""
    reference = pytest.importorskip("llms_from_scratch.appendix_e", reason="没有装 llms-from-scratch")
    torch.manual_seed(1)
    base = lora.GPTModel(TINY)
    ours, theirs = copy.deepcopy(base), copy.deepcopy(base)
    torch.manual_seed(2)
    lora.attach_lora(ours, rank=4, alpha=12)
    torch.manual_seed(2)
    for param in theirs.parameters():
        param.requires_grad = False
    reference.replace_linear_with_lora(theirs, rank=4, alpha=3)
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    assert all(mine.requires_grad == other.requires_grad for mine, other in zip(ours.parameters(), theirs.parameters()))
    idx = torch.randint(50257, (2, 10))
    assert torch.equal(ours(idx), base(idx))  # B = 0
    for model in (ours, theirs):
        torch.manual_seed(3)
        for name, param in model.named_parameters():
            if name.endswith("lora.B"):
                param.data.normal_()
    assert torch.allclose(ours(idx), theirs(idx), atol=1e-5)
    assert not torch.allclose(ours(idx), base(idx), atol=1e-2)


def test_merged_weights(lora):
    """并回去的模型：结构与原来的相同，输出与挂着 LoRA 时相同，权重是 W + (α/r)(AB)ᵀ。"""
    torch.manual_seed(1)
    model = lora.GPTModel(TINY)
    names = list(model.state_dict())
    before = model.trf_blocks[0].ff.layers[0].weight.clone()
    lora.attach_lora(model, rank=2, alpha=8)
    for name, param in model.named_parameters():
        if name.endswith("lora.B"):
            param.data.normal_(std=0.1)
    adapter, idx = model.trf_blocks[0].ff.layers[0].lora, torch.randint(50257, (2, 10))
    with torch.no_grad():
        want = model(idx)
        lora.merge_lora(model)
        assert torch.allclose(model(idx), want, atol=1e-4)
    assert list(model.state_dict()) == names
    expected = before + 4 * torch.einsum("ir,ro->oi", adapter.A, adapter.B)
    assert torch.allclose(model.trf_blocks[0].ff.layers[0].weight, expected, atol=1e-5)


def test_masked_collate(masking, phi3, reference):
    """手算的一批：提示词的目标遮住，第一个结束词元留着；两种写法相同；不遮时与 llms_from_scratch 相同。"""
    batch = [(3, [0, 1, 2, 3, 4]), (1, [5, 6]), (2, [7, 8, 9])]
    inputs, targets = masking.custom_collate_fn(batch)
    assert inputs.tolist() == [[0, 1, 2, 3, 4], [5, 6, 50256, 50256, 50256], [7, 8, 9, 50256, 50256]]
    assert targets.tolist() == [[-100, -100, 3, 4, 50256], [6, 50256, -100, -100, -100], [-100, 9, 50256, -100, -100]]
    assert batch[0] == (3, [0, 1, 2, 3, 4])
    assert all(torch.equal(*pair) for pair in zip(phi3.collate_batch(batch, True, CPU), (inputs, targets)))
    assert masking.custom_collate_fn(batch, allowed_max_length=3)[1].shape == (3, 3)
    want = reference.custom_collate_fn([item for _, item in batch])
    for have in (masking.custom_collate_fn(batch, mask_instructions=False), phi3.collate_batch(batch, False, CPU)):
        assert all(torch.equal(*pair) for pair in zip(have, want))


def test_loss_skips_nothing(phi3):
    """只算留下的位置，损失和梯度应与 llms_from_scratch 对全部位置算的相同。"""
    reference = pytest.importorskip("llms_from_scratch.ch05", reason="没有装 llms-from-scratch")
    torch.manual_seed(1)
    model = phi3.GPTModel(TINY)
    inputs, targets = torch.randint(50257, (2, 12)), torch.randint(50257, (2, 12))
    targets[0, :7], targets[1, 9:] = -100, -100
    grads = []
    for function in (phi3.calc_loss_batch, reference.calc_loss_batch):
        model.zero_grad()
        loss = function(inputs, targets, model, CPU)
        loss.backward()
        grads.append((loss.detach(), model.tok_emb.weight.grad.clone(), model.out_head.weight.grad.clone()))
    assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(*grads))


def test_prompts(phi3, reference):
    """Alpaca 格式与 llms_from_scratch 的相同；Phi-3 格式与原书练习 7.1 的相同，一个换行也不差。"""
    entry, bare = ({"instruction": "Spell it.", "input": text, "output": "Occasion"} for text in ("Ocassion", ""))
    assert phi3.format_input_phi(entry) + phi3.STYLES["phi3"][1] == "<|user|>\nSpell it.\nOcassion\n<|assistant|>:\n"
    assert phi3.format_input_phi(bare) + phi3.STYLES["phi3"][1] == "<|user|>\nSpell it.\n<|assistant|>:\n"
    tokenizer = phi3.load_gpt2_tokenizer()
    dataset = phi3.PromptDataset([entry, bare], tokenizer)
    assert [tokens for _, tokens in dataset] == list(reference.InstructionDataset([entry, bare], tokenizer))
    assert [length for length, _ in dataset] == [len(tokenizer.encode(reference.format_input(item))) for item in (entry, bare)]


def test_finetune_learns_and_repeats(phi3, data_file):
    """训练真的学得会（损失大降），同一个种子两次结果逐位相同，起点的权重不被改动。"""
    tokenizer, data = phi3.load_gpt2_tokenizer(), json.loads(data_file.read_text(encoding="utf-8"))[6:30]
    torch.manual_seed(1)
    state = phi3.GPTModel(TINY).state_dict()
    saved = copy.deepcopy(state)
    common = phi3.SimpleNamespace(
        device=CPU, tokenizer=tokenizer, data=data, train_data=data, val_data=data[:4], held_out=data[:6], config=TINY, state=state,
        settings=phi3.SETTINGS["mini"] | {"learning_rate": 2e-2, "warmup": 5}, epochs=10, batch_size=8, seed=123, quick=False,
    )
    first, second = phi3.finetune(common, "一"), phi3.finetune(common, "二")
    assert first["steps"] == 30 and first["final"][0] < 0.3 * first["initial"][0]
    assert (first["initial"], first["final"], first["accuracy"]) == (second["initial"], second["final"], second["accuracy"])
    assert all(torch.equal(state[name], saved[name]) for name in state)
    assert phi3.finetune(common, "三", steps=4)["steps"] == 4


BAD = [
    ("exercise_7_1_phi3_prompt", ["--epochs", "0"], "--epochs 至少是 1"),
    ("exercise_7_1_phi3_prompt", ["--seed", "-1"], "--seed 应在"),
    ("exercise_7_1_phi3_prompt", ["--device", "tpu"], "不认识的设备 tpu"),
    ("exercise_7_1_phi3_prompt", ["--colour"], "不认识的参数"),
    ("exercise_7_1_phi3_prompt", ["--data", "no-such.json"], "找不到 no-such.json"),
    ("exercise_7_2_mask_instruction", ["--data", "BROKEN"], "不是完整的 JSON"),
    ("exercise_7_2_mask_instruction", ["--from-file", "no-such.pth", "--data", "GOOD"], "找不到 no-such.pth"),
    ("exercise_7_3_alpaca_52k", ["--data", "FEW"], "太少"),
    ("exercise_7_3_alpaca_52k", ["--data", "SOME"], "取四分之一凑不出一批"),
    ("exercise_7_4_lora", ["--rank", "0"], "--rank 至少是 1"),
    ("exercise_7_4_lora", ["--alpha", "nan"], "--alpha 要大于 0"),
    ("exercise_7_4_lora", ["--rank", "193", "--data", "GOOD"], "就不是低秩了"),
]


@pytest.mark.parametrize("name,arguments,message", BAD, ids=[f"{name[9:12]} {' '.join(arguments)}" for name, arguments, _ in BAD])
def test_bad_input(name, arguments, message, data_file, tmp_path, monkeypatch, capsys):
    """坏参数、坏数据：stderr 上一句中文，退出码 2。"""
    entries = json.loads(data_file.read_text(encoding="utf-8"))
    files = {"GOOD": json.dumps(entries), "FEW": json.dumps(entries[:8]), "SOME": json.dumps(entries[:30]), "BROKEN": '[{"instruction": "a"'}
    for word, text in files.items():
        (tmp_path / f"{word}.json").write_text(text, encoding="utf-8")
    arguments = [str(tmp_path / f"{word}.json") if word in files else word for word in arguments]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *arguments, *([] if "--colour" in arguments else ["--quick"])])
    with pytest.raises(SystemExit) as stopped:
        load(name).main()
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and err.count("\n") == 1 and message in err, err
