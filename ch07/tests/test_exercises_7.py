"""第 7 章练习的测试：每个脚本跑一遍，读它印出来的数字；LoRA、遮住提示词、损失与独立的实现比较；坏参数、坏数据。

运行：python -m pytest ch07/tests/test_exercises_7.py
脚本在临时的小项目里跑，那里的 mini 是极小的随机模型。
"""

import copy
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

CHAPTER = Path(__file__).resolve().parents[1]
ROOT = CHAPTER.parent
NAMES = ["exercise_7_1_phi3_prompt", "exercise_7_2_mask_instruction", "exercise_7_3_alpaca_52k", "exercise_7_4_lora"]
CPU = torch.device("cpu")
TINY = {"vocab_size": 50257, "context_length": 128, "emb_dim": 16, "n_heads": 2, "n_layers": 2, "drop_rate": 0.1, "qkv_bias": False}


def load(path):
    """按路径导入一个练习。"""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def experiments(tmp_path_factory):
    """造一个小项目：练习是抄的，setup 是原来的，mini 是极小的随机模型；返回练习所在的文件夹。"""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(CHAPTER / "experiments", folder / "ch07" / "experiments", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "setup").symlink_to(ROOT / "setup", target_is_directory=True)
    (folder / "ch05" / "outputs").mkdir(parents=True)
    torch.manual_seed(0)
    model = load(CHAPTER / "experiments" / f"{NAMES[0]}.py").GPTModel(TINY)
    torch.save({"config": TINY, "model": model.state_dict()}, folder / "ch05" / "outputs" / "gpt_mini.pth")
    return folder / "ch07" / "experiments"


@pytest.fixture(scope="module")
def phi3(experiments):
    return load(experiments / f"{NAMES[0]}.py")


@pytest.fixture(scope="module")
def masking(experiments):
    return load(experiments / f"{NAMES[1]}.py")


@pytest.fixture(scope="module")
def lora(experiments):
    return load(experiments / f"{NAMES[3]}.py")


@pytest.fixture(scope="module")
def reference():
    """llms_from_scratch 的第 7 章。它导入 psutil 只为了看 Ollama 开没开，这里用不到，没有装就放一个空的。"""
    sys.modules.setdefault("psutil", types.ModuleType("psutil"))
    return pytest.importorskip("llms_from_scratch.ch07", reason="没有装 llms-from-scratch")


@pytest.mark.parametrize("name", NAMES)
def test_quick_run(name, experiments, tmp_path):
    """在别的文件夹里，没有原书数据，--quick 从头跑到尾；每一句自查都成立，表格每行都有数。"""
    env = {key: value for key, value in os.environ.items() if key != "LLM_DATA_DIR"} | {"OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    command = [sys.executable, str(experiments / f"{name}.py"), "--quick", "--device", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    out = done.stdout
    assert "✗" not in out and out.count("✓") >= 2, out
    assert "训练 40 条，没见过的题 16 条" in out, out
    rows = re.findall(r"([\d.]+) +(\d+) / 16", out)
    assert len(rows) == (3 if "7_2" in name else 2) and all(0 < float(loss) < 12 for loss, _ in rows), out
    if "7_1" in name:
        assert "[27, 91, 7220, 91, 29]" in out
    if "7_2" in name:
        assert "'\\n\\n### Response:\\nCrocodile, Elephant, Zebra<|endoftext|>'" in out and "[3, 64]" in out
    if "7_4" in name:
        assert "406,286,336 → 冻结之后 0 → 挂上 r = 16 的 LoRA 7,898,384" in out
    assert not list(tmp_path.iterdir()), "练习不该在当前文件夹里留下文件"


def test_lora_matches_reference(lora):
    """与 llms_from_scratch 的附录 E 比：同一个种子建出的 A 相同；它只乘 α，所以它的 α 应等于这里的 α/r。"""
    reference = pytest.importorskip("llms_from_scratch.appendix_e", reason="没有装 llms-from-scratch")
    torch.manual_seed(1)
    base = lora.GPTModel(TINY).eval()
    ours, theirs = copy.deepcopy(base), copy.deepcopy(base)
    torch.manual_seed(2)
    assert lora.attach_lora(ours, rank=4, alpha=12) == 0
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
    model = lora.GPTModel(TINY).eval()
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


def test_masked_collate(masking, reference):
    """手算的一批：提示词的目标遮住，第一个结束词元留着；不遮时与 llms_from_scratch 相同。"""
    batch = [(3, [0, 1, 2, 3, 4]), (1, [5, 6]), (2, [7, 8, 9])]
    inputs, targets = masking.custom_collate_fn(batch)
    assert inputs.tolist() == [[0, 1, 2, 3, 4], [5, 6, 50256, 50256, 50256], [7, 8, 9, 50256, 50256]]
    assert targets.tolist() == [[-100, -100, 3, 4, 50256], [6, 50256, -100, -100, -100], [-100, 9, 50256, -100, -100]]
    assert batch[0] == (3, [0, 1, 2, 3, 4])
    assert masking.custom_collate_fn(batch, allowed_max_length=3)[1].shape == (3, 3)
    have, want = masking.custom_collate_fn(batch, mask_instruction=False), reference.custom_collate_fn([item for _, item in batch])
    assert all(torch.equal(*pair) for pair in zip(have, want))


def test_mask_keeps_the_response_only(masking):
    """真的数据：没遮住的正是标题、回答和一个结束词元；指令里写着标题也不会错。"""
    tokenizer = masking.tiktoken.get_encoding("gpt2")
    entries = json.loads((ROOT / "setup" / "data" / "instructions.json").read_text(encoding="utf-8"))[:20]
    entries.append({"instruction": "Say:\n\n### Response:\nx", "input": "### Response:\n", "output": "y"})
    _, targets = masking.custom_collate_fn([*masking.InstructionDataset(entries, tokenizer)])
    for entry, target in zip(entries[:-1], targets):
        assert tokenizer.decode(target[target != -100].tolist()) == f"\n\n### Response:\n{entry['output']}<|endoftext|>"
    assert tokenizer.decode(targets[-1][targets[-1] != -100].tolist()).count("### Response:") == 1


def header_search(inputs, targets, tokenizer):
    """常见的错法：到编号里去找第一个标题，遮到它前面。返回一条样本没遮住的文字。"""
    header = tokenizer.encode("\n\n### Response:")
    ids = inputs.tolist()
    start = next(i for i in range(len(ids)) if ids[i : i + len(header)] == header)
    kept = targets[start - 1 :]
    return tokenizer.decode(kept[kept != -100].tolist())


def test_header_inside_the_text(masking):
    """自带的每一条，按长度遮与找标题遮的结果相同；指令、input、回答里写着标题时，找标题就错了，按长度不会。"""
    tokenizer = masking.tiktoken.get_encoding("gpt2")

    def both(entry):
        batch = [*masking.InstructionDataset([entry], tokenizer)]
        [inputs], [masked] = masking.custom_collate_fn(batch)
        _, [plain] = masking.custom_collate_fn(batch, mask_instruction=False)
        return tokenizer.decode(masked[masked != -100].tolist()), header_search(inputs, plain, tokenizer)

    for entry in json.loads((ROOT / "setup" / "data" / "instructions.json").read_text(encoding="utf-8")):
        assert both(entry) == (f"\n\n### Response:\n{entry['output']}<|endoftext|>",) * 2, entry
    title, plain = "\n\n### Response:\n", {"instruction": "Say it.", "input": "", "output": "y"}
    tricky = [plain | {"instruction": f"Repeat:{title}x"}, plain | {"input": f"a{title}b"}, plain | {"instruction": f"A{title}b", "input": f"c{title}d", "output": f"e{title}f"}]
    for entry in tricky:
        right, searched = both(entry)
        assert right == f"{title}{entry['output']}<|endoftext|>", entry
        assert searched != right, "这一条没有让找标题的上当，白查了"


def test_loss_skips_nothing(masking):
    """只算留下的位置，损失和梯度应与 llms_from_scratch 对全部位置算的相同。"""
    reference = pytest.importorskip("llms_from_scratch.ch05", reason="没有装 llms-from-scratch")
    torch.manual_seed(1)
    model = masking.GPTModel(TINY).eval()
    inputs, targets = torch.randint(50257, (2, 12)), torch.randint(50257, (2, 12))
    targets[0, :7], targets[1, 9:] = -100, -100
    grads = []
    for function in (masking.calc_loss_batch, reference.calc_loss_batch):
        model.zero_grad()
        loss = function(inputs, targets, model, CPU)
        loss.backward()
        grads.append((loss.detach(), model.tok_emb.weight.grad.clone(), model.out_head.weight.grad.clone()))
    assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(*grads))


def test_prompts(phi3, reference):
    """Alpaca 格式与 llms_from_scratch 的相同；Phi-3 格式与原书练习 7.1 的相同，一个换行也不差。"""
    entry, bare = ({"instruction": "Spell it.", "input": text, "output": "Occasion"} for text in ("Ocassion", ""))
    assert phi3.format_input_phi(entry) + phi3.STYLES["Phi-3"][1] == "<|user|>\nSpell it.\nOcassion\n<|assistant|>:\n"
    assert phi3.format_input_phi(bare) + phi3.STYLES["Phi-3"][1] == "<|user|>\nSpell it.\n<|assistant|>:\n"
    tokenizer = phi3.tiktoken.get_encoding("gpt2")
    assert [*phi3.InstructionDataset([entry, bare], tokenizer)] == [*reference.InstructionDataset([entry, bare], tokenizer)]
    assert tokenizer.decode(phi3.InstructionDataset([bare], tokenizer, "Phi-3")[0]) == "<|user|>\nSpell it.\n<|assistant|>:\nOcassion".replace("Ocassion", "Occasion")


def test_exact_is_what_greedy_decoding_writes(phi3):
    """一字不差的条数，与真的一个词元一个词元地写、再逐字比较，得到的相同；训练过，所以不是 0。"""
    tokenizer = phi3.tiktoken.get_encoding("gpt2")
    words = "cat dog sun hat".split()
    data = [{"instruction": f"Copy {word}.", "input": "", "output": f"{word} {word}"} for word in words]
    model, data_set = phi3.load_model(CPU), phi3.InstructionDataset(data, tokenizer)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    phi3.finetune(model, optimizer, data_set, data_set, phi3.custom_collate_fn, 40, "Hi", tokenizer, CPU)
    loss, exact = phi3.evaluate_answers(model, data, tokenizer, CPU)
    written = 0
    for entry in data:
        prompt = tokenizer.encode(phi3.format_input(entry) + "\n\n### Response:\n")
        idx = torch.tensor([prompt])
        for _ in range(8):
            idx = phi3.generate_text_simple(model, idx, 1, TINY["context_length"])
            if idx[0, -1] == 50256:
                break
        written += tokenizer.decode(idx[0, len(prompt) :].tolist()) == entry["output"] + "<|endoftext|>"
    assert exact == written > 0 and loss < 3
    assert all(torch.equal(before[name], weight) for name, weight in phi3.load_model(CPU).state_dict().items()), "文件里的权重不该变"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="没有 /dev/full，造不出写满的磁盘")
@pytest.mark.parametrize("name", NAMES)
def test_full_disk(name, experiments, tmp_path):
    """输出转到文件，磁盘满了：一句中文，退出码 2。"""
    env = {key: value for key, value in os.environ.items() if key != "LLM_DATA_DIR"} | {"OMP_NUM_THREADS": "1", "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"}
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, str(experiments / f"{name}.py"), "--quick", "--device", "cpu"], cwd=tmp_path, env=env, stdout=full, stderr=subprocess.PIPE, encoding="utf-8", timeout=300)
    assert done.returncode == 2 and "读写不了 输出：" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr, done.stderr


BAD = [
    ("exercise_7_1_phi3_prompt", ["--device", "tpu"], "设备 tpu"),
    ("exercise_7_1_phi3_prompt", ["--colour"], "--colour"),
    ("exercise_7_3_alpaca_52k", ["--data", "no-such.json"], "no-such.json"),
    ("exercise_7_3_alpaca_52k", ["--data", "BROKEN"], "JSON"),
    ("exercise_7_3_alpaca_52k", ["--data", "FEW"], "凑不出一批"),
    ("exercise_7_4_lora", ["--rank", "0"], "--rank 至少是 1"),
    ("exercise_7_4_lora", ["--alpha", "nan"], "--alpha 要大于 0"),
]


@pytest.mark.parametrize("name,arguments,message", BAD, ids=[f"{name[9:12]} {' '.join(arguments)}" for name, arguments, _ in BAD])
def test_bad_input(name, arguments, message, experiments, tmp_path, monkeypatch, capsys):
    """坏参数、坏数据：stderr 的最后一行是一句话，退出码 2。"""
    entry = {"instruction": "a", "input": "", "output": "b"}
    for word, text in {"FEW": json.dumps([entry] * 12), "BROKEN": '[{"instruction": "a"'}.items():
        (tmp_path / f"{word}.json").write_text(text, encoding="utf-8")
    arguments = [str(tmp_path / f"{word}.json") if word in ("FEW", "BROKEN") else word for word in arguments]
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit) as stopped:
        load(experiments / f"{name}.py").main()
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and message in err.splitlines()[-1] and "Traceback" not in err, err
