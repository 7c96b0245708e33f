"""第 6 章的测试：自带的短信、书上的数字、与独立实现的比较、坏数据、坏权重、弄断训练再接着训练、每个脚本各跑一遍。

运行：python -m pytest ch06/tests
需要原书的 SMSSpamCollection.tsv 的测试，在没有设置 LLM_DATA_DIR 时跳过。GPT-2 的权重用同样格式、随机的小文件代替。
"""

import csv
import importlib.util
import inspect
import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

TESTS = Path(__file__).resolve().parent
CHAPTER, ROOT = TESTS.parent, TESTS.parents[1]
SHIPPED = ROOT / "setup" / "data" / "messages.tsv"
BOOK = Path(os.environ.get("LLM_DATA_DIR", "no-such-folder")) / "SMSSpamCollection.tsv"
needs_book = pytest.mark.skipif(not BOOK.is_file(), reason="没有原书的 SMSSpamCollection.tsv：请让 LLM_DATA_DIR 指向它所在的文件夹")
CPU = torch.device("cpu")
TINY = {"vocab_size": 50257, "context_length": 100, "emb_dim": 16, "n_heads": 2, "n_layers": 2, "drop_rate": 0.1, "qkv_bias": False}
SCRIPTS = [
    "main/example_01_data.py",
    "main/example_02_dataloader.py",
    "main/example_03_classification_head.py",
    "main/example_04_loss_and_accuracy.py",
    "main/gpt_class_finetune.py",
    "experiments/exercise_6_1_context_length.py",
    "experiments/exercise_6_2_whole_model.py",
    "experiments/exercise_6_3_first_token.py",
]


def load(path):
    """按路径导入一个脚本。"""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(script, *args, cwd, book=False, encoding="utf-8", timeout=600):
    """在另一个文件夹里运行脚本，就像读者在终端里那样。"""
    env = {key: value for key, value in os.environ.items() if book or key != "LLM_DATA_DIR"}
    env |= {"PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, str(script), *map(str, args)], cwd=cwd, env=env, capture_output=True, encoding=encoding, timeout=timeout)


def complaint(err):
    """stderr 里除了进度条，应当只有一句中文；返回这句话。"""
    lines = [line for line in re.split(r"[\r\n]+", re.sub(r"(\] ?)(出错了)", r"\1\n\2", err)) if line.strip() and not line.startswith("微调:")]
    assert len(lines) == 1, err
    message = lines[0].removeprefix("出错了：").removesuffix("（用 --help 看用法）")
    assert message != lines[0] and re.search(r"[\u4e00-\u9fff]{2}", message) and "[Errno" not in message, err
    return message


def write_rows(path, rows):
    """把短信写成 .tsv。"""
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows(rows)
    return path


@pytest.fixture(scope="module")
def finetune():
    torch.set_num_threads(1)
    return load(CHAPTER / "main" / "gpt_class_finetune.py")


@pytest.fixture(scope="module")
def tokenizer(finetune):
    return finetune.load_gpt2_tokenizer()


@pytest.fixture(scope="module")
def reference():
    pytest.importorskip("pandas", reason="没有装 pandas，无法与原书的实现比较")
    return pytest.importorskip("llms_from_scratch.ch06", reason="没有装 llms-from-scratch，无法与它比较")


@pytest.fixture(scope="module")
def rows(finetune):
    return finetune.load_messages(SHIPPED)


@pytest.fixture(scope="module")
def tiny(finetune, tmp_path_factory):
    """极小的预训练模型，样子与 gpt_train.py 的检查点一样。"""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "gpt_tiny.pth"
    torch.save({"config": TINY, "model": finetune.GPTModel(TINY).state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def small_data(rows, tmp_path_factory):
    """100 条短信：平衡之后训练 8 批。"""
    ham, spam = ([row for row in rows if row[0] == label] for label in ("ham", "spam"))
    return write_rows(tmp_path_factory.mktemp("data") / "small.tsv", ham[:55] + spam[:45])


@pytest.fixture
def command_line(monkeypatch, capsys):
    """command_line(模块, 参数…) → 退出码、stdout、stderr；没有被接住的异常会让测试失败。"""

    def call(module, *args):
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, args)])
        with warnings.catch_warnings(record=True) as caught:
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
def trained(finetune, tiny, small_data, tmp_path_factory):
    """微调过的检查点所在的文件夹。"""
    out = tmp_path_factory.mktemp("trained")
    arguments = ["--from-file", tiny, "--data", small_data, "--epochs", 2, "--device", "cpu", "--out", out]
    argv, sys.argv = sys.argv, ["gpt_class_finetune.py", *map(str, arguments)]
    try:
        finetune.main()
    finally:
        sys.argv = argv
    return out


# ---- 自带的短信 ----


def test_messages_are_reproducible(tmp_path):
    """生成器两次写出的文件逐字节相同，与提交的也相同。"""
    module = load(ROOT / "setup" / "data" / "make_messages.py")
    module.PATH = tmp_path / "messages.tsv"
    module.main()
    assert module.PATH.read_bytes() == SHIPPED.read_bytes() and SHIPPED.stat().st_size < 500_000


def test_messages_look_like_sms(rows):
    labels = [label for label, _ in rows]
    texts = [text for _, text in rows]
    assert (len(rows), labels.count("ham"), labels.count("spam")) == (5572, 4825, 747)
    assert all(0 < len(text) <= 160 and text == text.strip() and "\n" not in text for text in texts)
    assert set("".join(texts)) - {chr(i) for i in range(32, 127)} <= set("£€")
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) <= 3 and max(lengths) >= 25
    for mark in ('"', ",", ";", "!", "?", "..."):
        assert sum(mark in text for text in texts) > 30, mark
    ham_words = " ".join(text.lower() for label, text in rows if label == "ham")
    assert all(ham_words.count(word) > 20 for word in ("prize", "free", "won", "claim", "urgent", "code", "£"))  # 难的正常短信


def test_messages_need_more_than_one_word(finetune, rows):
    """只凭一个词在不在，最多猜对七成多；平衡之后全猜一类是一半。"""
    train, _, _ = finetune.random_split(finetune.create_balanced_dataset(rows), 0.7, 0.1)
    words = [(label == "spam", set(re.findall(r"[a-z']+|[£$€]|\d", text.lower()))) for label, text in train]
    best = max(
        max(hits, len(words) - hits) / len(words)
        for word in set().union(*(found for _, found in words))
        for hits in [sum((word in found) == spam for spam, found in words)]
    )
    assert 0.6 < best < 0.8


def test_messages_have_no_near_duplicates(finetune, rows):
    """换一种量法（5 个字符一段的 Jaccard）：测试集的每一条，与训练、验证集里最像的那条也差得远；去掉数字和标点，没有两条相同。"""
    normal = [re.sub(r"[^a-z]+", "", text.lower()) for _, text in rows]
    assert len(set(normal)) == len(rows)
    train, val, test = finetune.random_split(finetune.create_balanced_dataset(rows), 0.7, 0.1)

    def pieces(text):
        text = re.sub(r"[^a-z]+", " ", text.lower())
        return {text[i : i + 5] for i in range(len(text) - 4)} or {text}

    known, close = [pieces(text) for _, text in train + val], []
    for _, text in test:
        own = pieces(text)
        close.append(max(len(own & other) / len(own | other) for other in known))
    assert max(close) < 0.8 and np.mean(close) < 0.5, (max(close), np.mean(close))


# ---- 数据：书上的数字，与 pandas 和原书的实现比较 ----


def frame_of(path):
    import pandas

    return pandas.read_csv(path, sep="\t", header=None, names=["Label", "Text"])


@pytest.mark.parametrize("path", [SHIPPED, pytest.param(BOOK, marks=needs_book)], ids=["自带", "原书"])
def test_data_agrees_with_reference(path, finetune, reference, tokenizer, tmp_path):
    """读、平衡、切分、填充，每一步都与 pandas 和原书作者的实现相同。"""
    frame, ours = frame_of(path), finetune.load_messages(path)
    assert ours == [tuple(row) for row in frame.values.tolist()]
    balanced_frame, balanced = reference.create_balanced_dataset(frame), finetune.create_balanced_dataset(ours)
    assert balanced == [tuple(row) for row in balanced_frame.values.tolist()] and len(balanced) == 2 * 747
    frames, parts = reference.random_split(balanced_frame, 0.7, 0.1), finetune.random_split(balanced, 0.7, 0.1)
    assert [len(part) for part in parts] == [1045, 149, 300]
    max_length = None
    for theirs, part in zip(frames, parts):
        assert part == [tuple(row) for row in theirs.values.tolist()]
        theirs.assign(Label=theirs["Label"].map({"ham": 0, "spam": 1})).to_csv(tmp_path / "part.csv", index=None)
        expected = reference.SpamDataset(tmp_path / "part.csv", tokenizer, max_length=max_length)
        dataset = finetune.SpamDataset(part, tokenizer, max_length=max_length)
        assert len(dataset) == len(expected) and dataset.max_length == expected.max_length
        for i in range(len(dataset)):
            assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(dataset[i], expected[i])), part[i]
        max_length = dataset.max_length
    short, expected = finetune.SpamDataset(parts[2], tokenizer, 7, 5), reference.SpamDataset(tmp_path / "part.csv", tokenizer, 7, 5)
    assert all(torch.equal(short[i][0], expected[i][0]) for i in range(len(short)))


@needs_book
def test_book_numbers_of_6_2_and_6_3(tmp_path):
    result = run(CHAPTER / "main" / "example_01_data.py", cwd=tmp_path, book=True)
    assert result.returncode == 0 and "✗" not in result.stdout, result.stdout + result.stderr
    for piece in ("有 5574 行，读成 5572 条；1 条吞掉了", "{'ham': 4825, 'spam': 747}", "{'ham': 747, 'spam': 747}", "训练 1045 条，验证 149 条，测试 300 条"):  # 6-01 到 6-03
        assert piece in result.stdout, piece
    assert "有 37 条与训练集里的一字不差" in result.stdout
    result = run(CHAPTER / "main" / "example_02_dataloader.py", cwd=tmp_path, book=True)
    assert result.returncode == 0 and "✗" not in result.stdout, result.stdout + result.stderr
    for piece in ("[50256]", "max_length = 120", "输入 (8, 120)", "标签 (8,)", "130 批训练，19 批验证，38 批测试"):  # 6-04、6-05
        assert piece in result.stdout, piece


@needs_book
def test_quoting_trap(finetune):
    """关掉引号来读，条数和抽出来的短信都与书上不同：example_01 里是这样说的。"""
    with open(BOOK, encoding="utf-8", newline="") as file:
        unquoted = [tuple(row) for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    assert len(unquoted) == 5574 and len(finetune.load_messages(BOOK)) == 5572
    assert finetune.create_balanced_dataset(unquoted) != finetune.create_balanced_dataset(finetune.load_messages(BOOK))


def test_balancing_works_either_way(finetune):
    """垃圾短信更多时也平衡得了：正常的全要（次序打乱），垃圾的取一样多。"""
    rows = [("ham", f"h{i}") for i in range(4)] + [("spam", f"s{i}") for i in range(9)]
    balanced = finetune.create_balanced_dataset(rows)
    assert sorted(balanced[:4]) == rows[:4] and balanced[4:] == rows[4:8]


# ---- 坏数据 ----

GOOD = "".join(f"ham\thello number {i}\nspam\twin prize {i}\n" for i in range(20))
BAD_DATA = {
    "没有制表符": (GOOD + "ham no tab here\n", "第 41 行没有制表符"),
    "正文是空的": ("ham\t  \n" + GOOD, "第 1 行正文是空的"),
    "标签不认识": (GOOD[:12] + "\n" + GOOD + "eggs\tnot a label\n", "'eggs' 不是 ham 或 spam"),
    "标签大写": (GOOD + "Spam\tcapital\n", "第 41 行标签 'Spam'"),
    "制表符太多": (GOOD + "ham\ttwo\ttabs\n", "第 41 行制表符不止一个"),
    "跨行之后的行号": ('ham\t"two\nlines"\nbad\n' + GOOD, "第 3 行没有制表符"),
    "好几处": ("a\nb\nc\nd\ne\n" + GOOD, "第 1 行没有制表符；第 2 行没有制表符；第 3 行没有制表符……共 5 处"),
    "引号吞掉太多": ('ham\t"never closed ' + "x" * 140_000, "第 1 行的引号没有配对"),
    "空文件": ("", "是空的"),
    "只有空白": (" \n\n", "是空的"),
    "只有 ham": ("".join(f"ham\tm{i}\n" for i in range(30)), "30 条 ham、0 条 spam"),
    "只有 spam": ("".join(f"spam\tm{i}\n" for i in range(30)), "0 条 ham、30 条 spam"),
    "太少": ("ham\ta\nspam\tb\n" * 5, "太少"),
    "二进制": ("ham\ta\0b\n" + GOOD, "二进制"),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data(name, finetune, tiny, tmp_path, command_line):
    text, expected = BAD_DATA[name]
    (tmp_path / "bad.tsv").write_text(text, encoding="utf-8")
    code, _, err = command_line(finetune, "--data", tmp_path / "bad.tsv", "--from-file", tiny, "--device", "cpu", "--out", tmp_path / "out")
    assert code == 2 and expected in complaint(err), err
    assert not (tmp_path / "out").exists()


def test_bad_data_files(finetune, tiny, tmp_path, command_line):
    (tmp_path / "gbk.tsv").write_bytes("ham\t今晚一起吃饭吗\nspam\t恭喜您中奖了\n".encode("gbk") * 20)
    for path, expected in [(tmp_path / "gbk.tsv", "不是 UTF-8"), (tmp_path / "absent.tsv", "找不到文件"), (tmp_path, "文件夹")]:
        code, _, err = command_line(finetune, "--data", path, "--from-file", tiny, "--out", tmp_path / "out")
        assert code == 2 and expected in complaint(err)
    with_bom = tmp_path / "bom.tsv"
    with_bom.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert finetune.load_messages(with_bom) == [tuple(line.split("\t")) for line in GOOD.splitlines()]  # 记事本存的也认


# ---- 模型、损失、训练：与独立实现比较 ----


def make_classifier(module, seed=0, trainable="last_block"):
    torch.manual_seed(seed)
    model = module.GPTModel(TINY | {"drop_rate": 0.0})
    module.add_classification_head(model, 2, trainable)
    return model


def make_loaders(module, rows, tokenizer, count=48):
    train, val, _ = module.random_split(module.create_balanced_dataset(rows), 0.7, 0.1)
    train_dataset = module.SpamDataset(train[:count], tokenizer, max_length=24)
    val_dataset = module.SpamDataset(val[:20], tokenizer, max_length=24)
    train_loader = torch.utils.data.DataLoader(train_dataset, batch_size=8, shuffle=True, drop_last=True)
    return train_loader, torch.utils.data.DataLoader(val_dataset, batch_size=8)


def test_head_and_frozen_layers(finetune):
    model = make_classifier(finetune)
    d = TINY["emb_dim"]
    trained = {name.split(".")[0] + ("." + name.split(".")[1] if "trf" in name else "") for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"trf_blocks.1", "final_norm", "out_head"}
    torch.manual_seed(123)
    assert torch.equal(model.out_head.weight, torch.nn.Linear(d, 2).weight)  # 与原书同一个种子
    assert model(torch.tensor([[1, 2, 3, 4]])).shape == (1, 4, 2)
    assert all(p.requires_grad for p in make_classifier(finetune, trainable="all").parameters())
    large = finetune.BASE_CONFIG | finetune.SIZES["124M"]
    with torch.device("meta"):
        large = finetune.GPTModel(large)
        finetune.add_classification_head(large)
    assert sum(p.numel() for p in large.parameters() if p.requires_grad) == 7_090_946


@pytest.mark.parametrize("num_batches", [None, 1, 2, 100])
def test_accuracy_and_loss_agree_with_reference(num_batches, finetune, reference, rows, tokenizer):
    model, (_, loader) = make_classifier(finetune, seed=4), make_loaders(finetune, rows, tokenizer)
    assert finetune.calc_accuracy_loader(loader, model, CPU, num_batches) == reference.calc_accuracy_loader(loader, model, CPU, num_batches)
    with torch.no_grad():
        assert finetune.calc_loss_loader(loader, model, CPU, num_batches) == pytest.approx(reference.calc_loss_loader(loader, model, CPU, num_batches), abs=1e-6)


def test_empty_loader_is_nan(finetune):
    assert np.isnan(finetune.calc_accuracy_loader([], make_classifier(finetune), CPU))


@pytest.mark.parametrize("trainable", ["last_block", "all"])
def test_training_agrees_with_reference(trainable, finetune, reference, rows, tokenizer, capsys):
    """同样的起点和种子，逐步训练两遍：每次评估的损失、每轮的准确率、最后的权重、随机数的位置都相同。"""
    results = []
    for module in (finetune, reference):
        model = make_classifier(finetune, seed=3, trainable=trainable)
        frozen = model.pos_emb.weight.detach().clone()
        loaders = make_loaders(finetune, rows, tokenizer)
        torch.manual_seed(123)
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.1)
        history = module.train_classifier_simple(model, *loaders, optimizer, CPU, num_epochs=3, eval_freq=2, eval_iter=2)
        assert torch.equal(frozen, model.pos_emb.weight) == (trainable == "last_block")
        results.append((history, [p.detach() for p in model.parameters()], torch.get_rng_state()))
    (ours, weights, state), (theirs, their_weights, their_state) = results
    assert ours[2] == theirs[2] and ours[3] == theirs[3] and ours[4] == theirs[4] == 3 * 48 and len(ours[0]) == 9
    assert ours[0] == pytest.approx(theirs[0], abs=1e-5) and ours[1] == pytest.approx(theirs[1], abs=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(weights, their_weights)) and torch.equal(state, their_state)
    assert ours[0][-1] < ours[0][0]


def test_the_run_follows_the_notebook(finetune, reference, tiny, small_data, tokenizer, tmp_path, command_line, monkeypatch):
    """整个流程与原书的笔记本相同：哪里设种子、量几批、哪个先哪个后。用原书作者的函数照笔记本走一遍，每个数都要一样。"""
    monkeypatch.setattr(finetune, "EVAL_FREQ", 3)
    code, output, err = command_line(
        finetune, "--from-file", tiny, "--data", small_data, "--epochs", 3, "--trainable", "last_block", "--device", "cpu", "--out", tmp_path / "out"
    )
    assert code == 0, err

    frame = reference.create_balanced_dataset(frame_of(small_data))
    frame["Label"] = frame["Label"].map({"ham": 0, "spam": 1})
    datasets = []
    for number, part in enumerate(reference.random_split(frame, 0.7, 0.1)):
        part.to_csv(tmp_path / f"{number}.csv", index=None)
        datasets.append(reference.SpamDataset(tmp_path / f"{number}.csv", tokenizer, datasets[0].max_length if datasets else None))
    torch.manual_seed(123)
    loaders = [torch.utils.data.DataLoader(dataset, batch_size=8, shuffle=number == 0, drop_last=number == 0) for number, dataset in enumerate(datasets)]
    model = finetune.GPTModel(TINY | {"drop_rate": 0.0})
    model.load_state_dict(torch.load(tiny, weights_only=True)["model"])
    for param in model.parameters():
        param.requires_grad = False
    torch.manual_seed(123)
    model.out_head = torch.nn.Linear(in_features=16, out_features=2)
    for param in [*model.trf_blocks[-1].parameters(), *model.final_norm.parameters()]:
        param.requires_grad = True
    torch.manual_seed(123)
    accuracy = [reference.calc_accuracy_loader(loader, model, CPU, num_batches=10) for loader in loaders]
    with torch.no_grad():
        loss = [reference.calc_loss_loader(loader, model, CPU, num_batches=5) for loader in loaders]
    torch.manual_seed(123)
    optimizer = torch.optim.AdamW(model.parameters(), lr=finetune.FINETUNE_SETTINGS["mini"]["learning_rate"], weight_decay=0.1)
    train_losses, val_losses, train_accs, val_accs, _ = reference.train_classifier_simple(model, *loaders[:2], optimizer, CPU, num_epochs=3, eval_freq=3, eval_iter=5)
    final = [reference.calc_accuracy_loader(loader, model, CPU) for loader in loaders]

    def printed(pattern):
        return [float(number) for groups in re.findall(pattern, output) for number in (groups if isinstance(groups, tuple) else (groups,))]

    percent = r"训练 ([\d.]+)%　验证 ([\d.]+)%　测试 ([\d.]+)%"
    assert printed(percent) == pytest.approx([round(value * 100, 2) for value in accuracy + final], abs=0.01)
    assert printed(r"训练 ([\d.]+)　 验证 ([\d.]+)　 测试 ([\d.]+)") == pytest.approx(loss, abs=6e-4)
    assert printed(r"步　训练损失 ([\d.]+)　验证损失 ([\d.]+)") == pytest.approx([value for pair in zip(train_losses, val_losses) for value in pair], abs=6e-4)
    assert printed(r"训练准确率 ([\d.]+)%　验证准确率 ([\d.]+)%") == pytest.approx([100 * value for pair in zip(train_accs, val_accs) for value in pair], abs=0.01)


@pytest.mark.parametrize("max_length", [1, 12, 40, 100])
def test_classify_review_agrees_with_reference(max_length, finetune, reference, rows, tokenizer):
    model, answers, gaps = make_classifier(finetune, seed=8), [], []
    hook = model.register_forward_hook(lambda module, inputs, outputs: gaps.append((outputs[0, -1, 1] - outputs[0, -1, 0]).item()))
    for _, text in rows[:60]:
        finetune.classify_review(text, model, tokenizer, CPU, max_length)
    hook.remove()
    with torch.no_grad():
        model.out_head.bias[1] -= sorted(gaps)[30]  # 随机的分类器往往只答一种；把界线挪到正中，两种答案才各有一半
    for _, text in rows[:60]:
        answers.append(finetune.classify_review(text, model, tokenizer, CPU, max_length))
        assert answers[-1] == reference.classify_review(text, model, tokenizer, CPU, max_length=max_length)
    assert set(answers) == {"spam", "not spam"}


def test_classify_review_at_its_limits(finetune, tokenizer):
    """原书第一次印刷的 shape[1] 是嵌入维度：这里 n_ctx 是 100、d 是 16，写错就会把短信截到 16 个词元。"""
    model, seen = make_classifier(finetune), []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for max_length, expected in [(60, 60), (None, 90), (100, 100), (500, 100)]:
        finetune.classify_review("word " * 89 + "end", model, tokenizer, CPU, max_length)
        assert seen[-1].shape == (1, expected), max_length
    finetune.classify_review("word", model, tokenizer, CPU, 5, pad_token_id=7)
    assert seen[-1].tolist() == [[4775, 7, 7, 7, 7]]
    finetune.classify_review("<|endoftext|>", model, tokenizer, CPU, 5)  # 当普通的字，不报错


@pytest.mark.parametrize("label", ["loss", "accuracy"])
def test_pictures(label, finetune, tmp_path, monkeypatch):
    """有没有中文字体都画得出来；只有一个点时也看得见。"""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for number, values in enumerate([[0.9, 0.5, 0.2], [0.5]]):
            if number:
                monkeypatch.setattr(finetune, "use_chinese_font", lambda: False)
            path = tmp_path / f"{number}.png"
            finetune.plot_values(torch.linspace(0, 2, len(values)), torch.linspace(0, 80, len(values)), values, values, label, path)
            assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 8_000


# ---- 从哪份权重开始 ----


def fake_root(finetune, tmp_path, monkeypatch):
    """让脚本以为自己在另一个项目里，那里还没有训练过 mini。"""
    (tmp_path / "ch06" / "main").mkdir(parents=True)
    (tmp_path / "ch05" / "outputs").mkdir(parents=True)
    monkeypatch.setitem(vars(finetune), "__file__", str(tmp_path / "ch06" / "main" / "gpt_class_finetune.py"))
    monkeypatch.delenv("LLM_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "ch05" / "outputs" / "gpt_mini.pth"


def test_choose_start(finetune, tmp_path, monkeypatch, capsys):
    mini, calls = fake_root(finetune, tmp_path, monkeypatch), []

    def pretend(command, **_):
        calls.append(command)
        mini.write_bytes(b"trained")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(finetune.subprocess, "run", pretend)
    assert finetune.choose_start(None, None, quick=True) is None and not calls  # 只看流程：不等训练
    assert finetune.choose_start(None, None) == mini and len(calls) == 1  # 没有就先训练一个
    assert calls[0][1:] == [str(tmp_path / "ch05" / "main" / "gpt_train.py")] and "先训练一个" in capsys.readouterr().out
    assert finetune.choose_start("mini", None) == finetune.choose_start(None, None, quick=True) == mini and len(calls) == 1
    assert finetune.choose_start("124M", tmp_path / "x.pth") == tmp_path / "x.pth"
    with pytest.raises(FileNotFoundError, match="setup/download.py gpt2-355M"):
        finetune.choose_start("355M", None)
    monkeypatch.setenv("LLM_DATA_DIR", str(tmp_path))
    (tmp_path / "gpt2-124M.safetensors").write_bytes(b"")
    assert finetune.choose_start(None, None) == tmp_path / "gpt2-124M.safetensors"  # 有 124M 就用 124M
    assert finetune.choose_start("mini", None) == mini

    mini.unlink()
    monkeypatch.setattr(finetune.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 2))
    with pytest.raises(OSError, match="没有训练成"):
        finetune.choose_start("mini", None)


@pytest.mark.parametrize(("done", "warned"), [(1, True), (14, True), (15, False), (40, False)])
def test_choose_start_says_when_the_mini_is_unfinished(finetune, tmp_path, monkeypatch, capsys, done, warned):
    mini = fake_root(finetune, tmp_path, monkeypatch)
    torch.save({"model": {}, "progress": {"epoch": done}}, mini)
    assert finetune.choose_start(None, None) == mini
    assert (f"只预训练了 {done} 轮" in capsys.readouterr().out) == warned


def test_choose_start_does_not_name_this_chapter(finetune):
    """第 7 章也沿用它，说的话不能提第 6 章。"""
    source = inspect.getsource(finetune.choose_start)
    assert "ch06" not in source and "第 6 章" not in source


# ---- OpenAI 格式的权重：随机的小文件 ----


def save_gpt2(path, d=32, n_layer=2, n_ctx=100, prefix=""):
    """写一个 OpenAI 格式的 safetensors，权重随机。"""
    generator = torch.Generator().manual_seed(1)
    shapes = {"wte.weight": (50257, d), "wpe.weight": (n_ctx, d), "ln_f.weight": (d,), "ln_f.bias": (d,)}
    for i in range(n_layer):
        block = {"ln_1.weight": (d,), "ln_1.bias": (d,), "ln_2.weight": (d,), "ln_2.bias": (d,), "attn.c_attn.weight": (d, 3 * d), "attn.c_attn.bias": (3 * d,)}
        block |= {"attn.c_proj.weight": (d, d), "attn.c_proj.bias": (d,), "mlp.c_fc.weight": (d, 4 * d), "mlp.c_fc.bias": (4 * d,), "mlp.c_proj.weight": (4 * d, d), "mlp.c_proj.bias": (d,)}
        shapes |= {f"h.{i}.{name}": shape for name, shape in block.items()}
    save_file({prefix + name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}, path)
    return path


SHRINK = {  # 把脚本里的 124M 换成极小的规模
    '"124M": {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12}': '"124M": {"n_vocab": 50257, "n_ctx": 100, "n_embd": 32, "n_head": 4, "n_layer": 2}',
    '"gpt2-small (124M)": {"emb_dim": 768, "n_layers": 12, "n_heads": 12}': '"gpt2-small (124M)": {"emb_dim": 32, "n_layers": 2, "n_heads": 4}',
    '"context_length": 1024': '"context_length": 100',
}


@pytest.mark.parametrize(("prefix", "official"), [("", False), ("transformer.", False), ("", True)], ids=["别的权重", "另一种起名", "官方的大小"])
def test_scripts_with_gpt2_weights(prefix, official, rows, tmp_path, monkeypatch, capsys, command_line):
    """6-06 到 6-14 的代码路径：有 124M 就用它；文件大小与 OpenAI 的相同时，才核对书上的数（随机的权重当然核对不上）。"""
    weights = save_gpt2(tmp_path / "gpt2-124M.safetensors", prefix=prefix)
    ham, spam = ([(label, text[:9]) for label, text in rows if label == wanted] for wanted in ("ham", "spam"))  # 截短，省时间
    data = write_rows(tmp_path / "SMSSpamCollection.tsv", ham + spam if official else ham[:80] + spam[:60])
    monkeypatch.setenv("LLM_DATA_DIR", str(tmp_path))
    (tmp_path / "main").mkdir()
    for script in ("example_03_classification_head.py", "example_04_loss_and_accuracy.py", "gpt_class_finetune.py"):
        source = (CHAPTER / "main" / script).read_text(encoding="utf-8")
        for old, new in SHRINK.items():
            assert old in source, (script, old)
            source = source.replace(old, new)
        if official:
            assert "548_105_171" in source
            source = source.replace("548_105_171", str(weights.stat().st_size)).replace("477_907", str(data.stat().st_size))
        path = tmp_path / "main" / script
        path.write_text(source, encoding="utf-8")
        if script.startswith("example"):
            exec(compile(source, str(path), "exec"), {"__name__": path.stem, "__file__": str(path)})
            output = capsys.readouterr().out
        else:
            settings = ["--epochs", 5, "--trainable", "last_block"] if official else ["--epochs", 1]
            code, output, err = command_line(load(path), "--device", "cpu", "--out", tmp_path / "out", *settings)
            assert code == 0, err
            assert not official or "每 50 步的损失" in output
            assert (tmp_path / "out" / "review_classifier_gpt2-124M.pth").is_file()
        wrong = [line for line in output.splitlines() if "✗" in line]
        assert "gpt2-124M.safetensors" in output
        if not official:
            assert not wrong, wrong
        if official:
            assert wrong and all("书上" in line for line in wrong), wrong


# ---- 命令行：从头到尾 ----


def test_finetuning_from_start_to_end(finetune, trained, small_data, tiny, command_line, tmp_path):
    names = {path.name for path in trained.iterdir()}
    assert names == {"review_classifier_gpt_tiny.pth", "loss_review_classifier_gpt_tiny.png", "accuracy_review_classifier_gpt_tiny.png"}
    content = torch.load(trained / "review_classifier_gpt_tiny.pth", weights_only=True)
    assert content["model"]["out_head.weight"].shape == (2, 16) and content["trainable"] == "all" and content["progress"]["epoch"] == 2
    for text in ("You won a prize, call now", 'quotes " and; commas, 你好 <|endoftext|>', "x " * 500):
        code, out, err = command_line(finetune, "--text", text, "--from-file", tiny, "--out", trained, "--device", "cpu")
        assert code == 0 and err == "" and re.search(r"^(spam|not spam)　", out, re.M), err

    code, out, _ = command_line(finetune, "--from-file", tiny, "--data", small_data, "--epochs", 1, "--trainable", "last_block", "--device", "cpu", "--out", tmp_path)
    assert code == 0 and "✗" not in out and "冻结的层一个数也没变" in out and str(tiny) in out
    code, out, _ = command_line(finetune, "--random-init", "--quick", "--data", small_data, "--device", "cpu", "--out", tmp_path)
    assert code == 0 and "✗" not in out and "随机的，没有预训练" in out and (tmp_path / "review_classifier_random_quick.pth").is_file()
    shutil.copy(trained / "review_classifier_gpt_tiny.pth", tmp_path / "review_classifier_gpt_tiny.pth")  # 已经练了 2 轮，只要 1 轮：什么也不做
    code, out, _ = command_line(finetune, "--resume", "--from-file", tiny, "--data", small_data, "--epochs", 1, "--device", "cpu", "--out", tmp_path)
    assert code == 0 and "✗" not in out and "看过 2 轮" in out


def test_refuses(finetune, trained, tiny, small_data, tmp_path, command_line, monkeypatch):
    given = ["--from-file", tiny, "--data", small_data, "--out", tmp_path / "out"]
    cases = [["--epochs", 0], ["--epochs", "两轮"], ["--size", "3B"], ["--trainable", "first"], ["--device", "tpu"], ["--seed", 10**30], ["--nosuch"], ["--text", ""], ["--text", "  "]]
    cases += [["--device", name] for name, found in [("mps", torch.backends.mps.is_available()), ("cuda", torch.cuda.is_available())] if not found]
    for case in cases:
        code, _, err = command_line(finetune, *given, *case)
        assert code == 2, case
        complaint(err)
        assert not (tmp_path / "out").exists(), case
    code, _, err = command_line(finetune, "--from-file", tiny, "--size", "124M", "--data", small_data, "--out", tmp_path / "out")
    assert code == 2 and "不是 124M" in complaint(err)
    code, _, err = command_line(finetune, *given, "--random-init")
    assert code == 2 and "只能用一个" in complaint(err)
    code, _, err = command_line(finetune, "--text", "hi", "--from-file", tiny, "--out", tmp_path / "out")
    assert code == 2 and "请先微调" in complaint(err)
    monkeypatch.setattr(finetune, "total_memory", lambda: 0.4)
    code, _, err = command_line(finetune, *given)
    assert code == 2 and "GB" in complaint(err) and not (tmp_path / "out").exists()


def test_out_is_a_file(finetune, tiny, small_data, tmp_path, command_line):
    (tmp_path / "file").write_text("我是一个文件", encoding="utf-8")
    for out in (tmp_path / "file", tmp_path / "file" / "inside"):
        code, _, err = command_line(finetune, "--from-file", tiny, "--data", small_data, "--out", out, "--device", "cpu")
        assert code == 2 and "--out" in complaint(err)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "我是一个文件"


class Dangerous:
    """读它的人会建一个文件：用来看代码有没有被执行。"""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def bad_files(good, folder):
    """各种坏掉的文件：名字 → 路径。"""
    data, content = good.read_bytes(), torch.load(good, weights_only=True)
    files = {name: folder / f"{number}.pth" for number, name in enumerate(["空的", "截断", "乱码", "文本", "夹带代码", "夹带代码的权重", "别的项目", "不是字典", "配置不对", "权重不全"])}
    files["空的"].write_bytes(b"")
    files["截断"].write_bytes(data[: len(data) * 2 // 3])
    files["乱码"].write_bytes(random.Random(1).randbytes(5000))
    files["文本"].write_text("这不是检查点\n" * 100, encoding="utf-8")
    files["夹带代码"].write_bytes(pickle.dumps(Dangerous(folder / "executed")))
    torch.save(content | {"model": Dangerous(folder / "executed")}, files["夹带代码的权重"])
    torch.save(torch.nn.Linear(3, 3).state_dict(), files["别的项目"])
    torch.save([1, 2, 3], files["不是字典"])
    torch.save(content | {"config": content["config"] | {"emb_dim": 32}}, files["配置不对"])
    torch.save(content | {"model": {"tok_emb.weight": torch.zeros(3)}}, files["权重不全"])
    return files


def test_bad_start_weights(finetune, tiny, small_data, tmp_path, command_line):
    for name, path in (bad_files(tiny, tmp_path) | {"不存在": tmp_path / "absent.pth", "文件夹": tmp_path}).items():
        code, _, err = command_line(finetune, "--from-file", path, "--data", small_data, "--out", tmp_path / "out", "--device", "cpu")
        assert code == 2, name
        complaint(err)
    assert not (tmp_path / "executed").exists() and not (tmp_path / "out").exists()


def test_bad_classifier(finetune, trained, tiny, small_data, tmp_path, command_line):
    """微调的检查点坏了，--resume 和 --text 都只说一句话，不动文件，不执行里面的代码。"""
    good = trained / "review_classifier_gpt_tiny.pth"
    (tmp_path / "bad").mkdir()
    for number, (name, path) in enumerate((bad_files(good, tmp_path / "bad") | {"不存在": tmp_path / "absent.pth"}).items()):
        out = tmp_path / f"out{number}"
        out.mkdir()
        if path.is_file():
            shutil.copy(path, out / good.name)
        before = {item.name: item.read_bytes() for item in out.iterdir()}
        for arguments in (["--resume", "--data", small_data], ["--text", "hello"]):
            code, _, err = command_line(finetune, *arguments, "--from-file", tiny, "--out", out, "--device", "cpu")
            assert code == 2, (name, arguments)
            complaint(err)
        assert {item.name: item.read_bytes() for item in out.iterdir()} == before, name
    assert not (tmp_path / "bad" / "executed").exists()


def test_resume_refuses_another_training(finetune, trained, tiny, small_data, rows, tmp_path, command_line):
    shutil.copy(trained / "review_classifier_gpt_tiny.pth", tmp_path)
    other = write_rows(tmp_path / "other.tsv", rows[:200])
    for case in (["--data", other], ["--data", small_data, "--seed", 7], ["--data", small_data, "--trainable", "last_block"]):
        code, _, err = command_line(finetune, "--resume", *case, "--from-file", tiny, "--out", tmp_path, "--device", "cpu")
        assert code == 2 and "接不上" in complaint(err), case


# ---- 弄断训练，再接着训练 ----


@pytest.mark.skipif(not hasattr(os, "fork"), reason="这些试验要用 fork，Windows 上没有")
def test_interrupted_finetuning(tiny, small_data, tmp_path):
    """随机的时刻、写检查点写到一半时 kill -9，再接着训练：结果与没断过的逐位相同。试验在 kill_trials.py 里。"""
    command = [sys.executable, str(TESTS / "kill_trials.py"), str(tiny), str(small_data), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    trials = json.loads(result.stdout.splitlines()[-1])
    assert trials["完整的一次"] == 0 and trials["杀死次数"] >= 3
    for chain in trials["随机"]:
        assert chain == {"退出码": 0, "不同": [], "剩下的 .part": []}
    for trial in trials["写到一半"]:
        assert trial["被杀"] == -signal.SIGKILL and trial["读得出来"] and trial["续训"] == 0 and trial["不同"] == [], trial
    assert trials["训练完再续"] == [0, []] and trials["加到 4 轮"] == [0, 0, []]
    assert trials["磁盘满"]["退出码"] == 2 and trials["磁盘满"]["旧的完好"] and "写不进" in complaint(trials["磁盘满"]["报错"])


# ---- 每个脚本各跑一遍 ----


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_runs(script, tiny, tmp_path):
    """--quick 从头到尾：退出码 0，没有 ✗，不写别的地方。逐步讲解没有参数，直接运行。"""
    path, arguments = CHAPTER / script, []
    if "example" not in script:
        arguments = ["--quick", "--from-file", tiny, "--device", "cpu"] + (["--out", tmp_path / "out"] if "main/" in script else [])
    result = run(path, *arguments, cwd=tmp_path)
    assert result.returncode == 0 and "✗" not in result.stdout and "✓" in result.stdout, result.stdout + result.stderr
    assert ("messages.tsv" in result.stdout or "example_03" in script) and "Traceback" not in result.stderr
    assert {item.name for item in tmp_path.iterdir()} <= {"out"}
    if arguments:
        assert str(tiny) in result.stdout
    if "example_04" in script:  # 6-09：书上微调前的准确率，就是那 10 批里 spam 的比例；自带的数据条数相同，标签的次序也就相同
        assert "一律答 spam 的准确率　训练 46.25%　验证 45.00%　测试 48.75%" in result.stdout


def test_exercises_change_only_one_thing(finetune, tiny, small_data, tmp_path, command_line):
    """三个练习的第一行都与 gpt_class_finetune.py 的结果相同；第二行只改了题目说的那一处。"""
    given = ["--from-file", tiny, "--data", small_data, "--epochs", 2, "--device", "cpu"]
    expected = {}
    for trainable in ("all", "last_block"):
        _, output, _ = command_line(finetune, *given, "--trainable", trainable, "--out", tmp_path)
        expected[trainable] = re.findall(r"训练后　准确率　训练 ([\d.]+%)　验证 ([\d.]+%)　测试 ([\d.]+%)", output)[0]
    tables = {}
    for number, name in [(1, "exercise_6_1_context_length"), (2, "exercise_6_2_whole_model"), (3, "exercise_6_3_first_token")]:
        code, output, err = command_line(load(CHAPTER / "experiments" / f"{name}.py"), *given)
        assert code == 0 and "✗" not in output, err
        tables[number] = re.findall(r"^\S+　* +([\d.]+%) +([\d.]+%) +([\d.]+%) +\d+ 秒", output, re.M)
        lengths = [int(length) for length in re.findall(r"每批 \(8, (\d+)\)", output)]
        counts = re.findall(r"训练 ([\d,]+) 个参数", output)
        assert len(tables[number]) == 2 and (lengths[0] != lengths[1]) == (number == 1) and (counts[0] != counts[1]) == (number == 2)
        assert number != 1 or lengths[1] == TINY["context_length"]
    assert tables[1][0] == tables[3][0] == tables[2][1] == expected["all"] and tables[2][0] == expected["last_block"]
    module = load(CHAPTER / "experiments" / "exercise_6_3_first_token.py")
    model, batch = make_classifier(module), torch.randint(50257, (3, 9))
    assert torch.equal(module.FirstToken(model)(batch)[:, -1, :], model(batch)[:, 0, :])


@pytest.mark.parametrize("script", [script for script in SCRIPTS if "example" not in script])
def test_command_lines(script, tiny, tmp_path, command_line):
    module = load(CHAPTER / script)
    code, out, _ = command_line(module, "--help")
    assert code == 0 and out.startswith("用法：")
    for flag in re.findall(r'add_argument\("(--[\w-]+)"', inspect.getsource(module)):
        assert flag in out
    for case in (["--nosuch"], ["--epochs", 0], ["--size", "3B"], ["--device", "tpu"], ["--data", tmp_path / "absent.tsv"], ["--from-file", tmp_path / "absent.pth"]):
        code, _, err = command_line(module, *case)
        assert code == 2, case
        complaint(err)


def test_every_script_is_listed():
    """新写的脚本必须加进 SCRIPTS，也必须写进 README。"""
    found = sorted(f"{path.parent.name}/{path.name}" for folder in ("main", "experiments") for path in (CHAPTER / folder).glob("*.py"))
    assert found == sorted(SCRIPTS)
    readme = (CHAPTER / "README.md").read_text(encoding="utf-8")
    assert not [script for script in found if script.split("/")[1] not in readme]
    assert all(f"6.{number}" in readme for number in range(1, 9))


def test_output_on_a_gbk_console(tmp_path):
    result = run(CHAPTER / "main" / "example_01_data.py", cwd=tmp_path, encoding="gbk")
    assert result.returncode == 0 and "\\N{CHECK MARK}" in result.stdout, result.stderr


# ---- 真的微调一次（慢，三四分钟） ----


def test_from_a_fresh_clone(tmp_path):
    """刚克隆下来、什么都没有：自己先训练 mini，再微调，测试准确率与 README 写的差不多。

    README 写的是 97%。换了机器或线程数，加法的次序不同，训练会走出另一条路，所以留几个百分点。
    """
    for name in ("ch05/main/gpt_train.py", "ch06/main/gpt_class_finetune.py", "setup/data/messages.tsv", "setup/data/story-en.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    result = run(tmp_path / "ch06" / "main" / "gpt_class_finetune.py", "--device", "cpu", cwd=tmp_path, timeout=3000)
    assert result.returncode == 0 and "✗" not in result.stdout, result.stdout + result.stderr
    assert "先训练一个" in result.stdout and str(tmp_path / "ch05" / "outputs" / "gpt_mini.pth") in result.stdout
    before, after = (float(number) for number in re.findall(r"测试 ([\d.]+)%", result.stdout)[-2:])
    assert 30 < before < 70 and after >= 93, result.stdout
    again = run(tmp_path / "ch06" / "main" / "gpt_class_finetune.py", "--text", "Congratulations! You have won a new phone. Call 08081 570211 now to claim it", "--device", "cpu", cwd=tmp_path)
    assert again.returncode == 0 and re.search(r"^spam　", again.stdout, re.M), again.stdout + again.stderr
