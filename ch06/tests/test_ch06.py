"""第 6 章的测试：自带的短信、书上的数字、与独立实现的比较、坏数据、每个脚本各跑一遍、用真的 mini 微调一次。

运行：python -m pytest ch06/tests
需要原书的 SMSSpamCollection.tsv 的测试，在没有设置 LLM_DATA_DIR 时跳过。
脚本在临时的小项目里跑，那里的 mini 和 124M 是极小的随机模型：快，也不碰读者的 ch06/outputs。
"""

import csv
import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

TESTS = Path(__file__).resolve().parent
CHAPTER, ROOT = TESTS.parent, TESTS.parents[1]
SHIPPED = ROOT / "setup" / "data" / "messages.tsv"
MINI = ROOT / "ch05" / "outputs" / "gpt_mini.pth"
BOOK = Path(os.environ.get("LLM_DATA_DIR", "no-such-folder")) / "SMSSpamCollection.tsv"
needs_book = pytest.mark.skipif(not BOOK.is_file(), reason="没有原书的 SMSSpamCollection.tsv：请让 LLM_DATA_DIR 指向它所在的文件夹")
needs_mini = pytest.mark.skipif(not MINI.is_file(), reason="没有 ch05/outputs/gpt_mini.pth：请先运行 python ch05/main/gpt_train.py")
CPU = torch.device("cpu")
TINY = {"vocab_size": 50257, "context_length": 128, "emb_dim": 16, "n_heads": 2, "n_layers": 2, "drop_rate": 0.1, "qkv_bias": False}
WALKTHROUGHS = [
    "main/example_01_data.py",
    "main/example_02_dataloader.py",
    "main/example_03_classification_head.py",
    "main/example_04_loss_and_accuracy.py",
    "main/example_05_finetune_classifier.py",
    "main/example_06_classify_review.py",
]
PROGRAMS = [
    "main/gpt_class_finetune.py",
    "experiments/exercise_6_1_context_length.py",
    "experiments/exercise_6_2_whole_model.py",
    "experiments/exercise_6_3_first_token.py",
]
EXPERIMENTS = [f"experiments/exp_{name}.py" for name in ("classifier_page", "finetune_ablation", "imbalance", "larger_dataset", "leakage", "lora", "padding_position", "pretraining_worth", "what_it_looks_at")]  # 各有自己的测试


def load(path):
    """按路径导入一个脚本。"""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(script, *args, cwd, book=False, timeout=600):
    """在另一个文件夹里运行脚本，就像读者在终端里那样。"""
    env = {key: value for key, value in os.environ.items() if book or key != "LLM_DATA_DIR"}
    env |= {"PYTHONUTF8": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    return subprocess.run([sys.executable, str(script), *map(str, args)], cwd=cwd, env=env, capture_output=True, encoding="utf-8", timeout=timeout)


def complaint(err):
    """stderr 的最后一行应当是一句中文，没有 traceback；返回这句话。"""
    message = err.strip().splitlines()[-1]
    assert "Traceback" not in err and re.search(r"[\u4e00-\u9fff]{2}", message) and "[Errno" not in message, err
    return message


def write_rows(path, rows):
    """把短信写成 .tsv。"""
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows(rows)
    return path


def make_project(folder, mini=True):
    """造一个小项目：脚本是抄的，setup 是原来的；mini 和 124M 是极小的随机模型。"""
    for kind in ("main", "experiments"):
        shutil.copytree(CHAPTER / kind, folder / "ch06" / kind, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "setup").symlink_to(ROOT / "setup", target_is_directory=True)
    outputs = folder / "ch05" / "outputs"
    outputs.mkdir(parents=True)
    if mini:
        module = load(folder / "ch06" / "main" / "gpt_class_finetune.py")
        for name, config in {"gpt_mini.pth": TINY, "gpt2-124M.pth": TINY | {"qkv_bias": True, "drop_rate": 0.0}}.items():
            torch.manual_seed(0)
            torch.save({"config": config, "model": module.GPTModel(config).state_dict()}, outputs / name)
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    torch.set_num_threads(1)
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def finetune(project):
    return load(project / "ch06" / "main" / "gpt_class_finetune.py")


@pytest.fixture(scope="module")
def tokenizer(finetune):
    return finetune.tiktoken.get_encoding("gpt2")


@pytest.fixture(scope="module")
def reference():
    pytest.importorskip("pandas", reason="没有装 pandas，无法与原书的实现比较")
    return pytest.importorskip("llms_from_scratch.ch06", reason="没有装 llms-from-scratch，无法与它比较")


@pytest.fixture(scope="module")
def rows(finetune):
    return finetune.load_messages(SHIPPED)


@pytest.fixture(scope="module")
def small_data(rows, tmp_path_factory):
    """100 条短信：平衡之后训练 7 批。"""
    ham, spam = ([row for row in rows if row[0] == label] for label in ("ham", "spam"))
    return write_rows(tmp_path_factory.mktemp("data") / "small.tsv", ham[:55] + spam[:45])


@pytest.fixture
def command_line(monkeypatch, capsys):
    """command_line(模块, 参数…) → 退出码、stdout、stderr；没有被接住的异常会让测试失败。"""

    def call(module, *args):
        monkeypatch.delenv("LLM_DATA_DIR", raising=False)
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, args)])
        try:
            module.main()
            code = 0
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return call


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
    """读、平衡、切分、写 CSV、填充，每一步都与 pandas 和原书作者的实现相同。"""
    frame, ours = frame_of(path), finetune.load_messages(path)
    assert ours == [tuple(row) for row in frame.values.tolist()]
    balanced_frame, balanced = reference.create_balanced_dataset(frame), finetune.create_balanced_dataset(ours)
    assert balanced == [tuple(row) for row in balanced_frame.values.tolist()] and len(balanced) == 2 * 747
    balanced_frame["Label"] = balanced_frame["Label"].map({"ham": 0, "spam": 1})
    numbered = [({"ham": 0, "spam": 1}[label], text) for label, text in balanced]
    frames, parts = reference.random_split(balanced_frame, 0.7, 0.1), finetune.random_split(numbered, 0.7, 0.1)
    assert [len(part) for part in parts] == [1045, 149, 300]
    max_length, ours_csv, theirs_csv = None, tmp_path / "ours.csv", tmp_path / "theirs.csv"
    for theirs, part in zip(frames, parts):
        assert part == [tuple(row) for row in theirs.values.tolist()]
        theirs.to_csv(theirs_csv, index=None)
        finetune.to_csv(part, ours_csv)
        assert ours_csv.read_bytes() == theirs_csv.read_bytes()
        expected = reference.SpamDataset(theirs_csv, tokenizer, max_length=max_length)
        dataset = finetune.SpamDataset(csv_file=ours_csv, tokenizer=tokenizer, max_length=max_length)
        assert len(dataset) == len(expected) and dataset.max_length == expected.max_length
        for i in range(len(dataset)):
            assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(dataset[i], expected[i])), part[i]
        max_length = dataset.max_length
    assert {item.name for item in tmp_path.iterdir()} == {"ours.csv", "theirs.csv"}  # 写在旁边的临时文件都改了名
    short, expected = finetune.SpamDataset(ours_csv, tokenizer, 7, 5), reference.SpamDataset(theirs_csv, tokenizer, 7, 5)
    assert all(torch.equal(short[i][0], expected[i][0]) for i in range(len(short)))


@needs_book
def test_book_numbers_of_6_2_and_6_3(project, tmp_path):
    result = run(project / "ch06" / "main" / "example_01_data.py", cwd=tmp_path, book=True)
    assert result.returncode == 0 and "✗" not in result.stdout, result.stdout + result.stderr
    for piece in ("有 5574 行，读成 5572 条；1 条吞掉了", "{'ham': 4825, 'spam': 747}", "{'ham': 747, 'spam': 747}", "训练 1045 条，验证 149 条，测试 300 条"):  # 6-01 到 6-03
        assert piece in result.stdout, piece
    assert "[4307, 4138, 4831, 4461, 5440]" in result.stdout and "有 37 条与训练集里的一字不差" in result.stdout
    result = run(project / "ch06" / "main" / "example_02_dataloader.py", cwd=tmp_path, book=True)
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


# ---- 坏数据：一句中文，退出码 2，什么都不写 ----

GOOD = "".join(f"ham\thello number {i}\nspam\twin prize {i}\n" for i in range(20))
BAD_DATA = {
    "没有制表符": (GOOD + "ham no tab here\n", "第 41 条是 'ham no tab here'"),
    "正文是空的": ("ham\t  \n" + GOOD, "第 1 条是 "),
    "标签不认识": (GOOD[:12] + "\n" + GOOD + "eggs\tnot a label\n", "'eggs\\tnot a label'"),
    "标签大写": (GOOD + "Spam\tcapital\n", "第 41 条是 'Spam\\tcapital'"),
    "制表符太多": (GOOD + "ham\ttwo\ttabs\n", "第 41 条是 "),
    "不是短信": ('[\n  {"instruction": "…"}\n]\n', "第 1 条是 '['"),
    "引号吞掉太多": ('ham\t"never closed ' + "x" * 140_000, "引号没有配对"),
    "空文件": ("", "0 条 ham、0 条 spam"),
    "只有 ham": ("".join(f"ham\tm{i}\n" for i in range(30)), "30 条 ham、0 条 spam"),
    "只有 spam": ("".join(f"spam\tm{i}\n" for i in range(30)), "0 条 ham、30 条 spam"),
    "太少": ("ham\ta\nspam\tb\n" * 5, "凑不出一批训练数据（8 条）"),
    "正好差一点": ("ham\ta\nspam\tb\n" * 5 + "ham\tc\n", "凑不出一批训练数据（8 条）"),
}


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """另一个小项目：只拿来试坏的，那里的 ch06/outputs 一直不该出现。"""
    folder = make_project(tmp_path_factory.mktemp("untouched"))
    return load(folder / "ch06" / "main" / "gpt_class_finetune.py")


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data(name, untouched, tmp_path, command_line):
    text, expected = BAD_DATA[name]
    (tmp_path / "bad.tsv").write_text(text, encoding="utf-8")
    code, _, err = command_line(untouched, "--data", tmp_path / "bad.tsv", "--device", "cpu")
    assert code == 2 and expected in complaint(err), err
    assert not untouched.OUTPUTS.exists()


def test_bad_data_files(untouched, tmp_path, command_line):
    (tmp_path / "gbk.tsv").write_bytes("ham\t今晚一起吃饭吗\nspam\t恭喜您中奖了\n".encode("gbk") * 20)
    for path in (tmp_path / "gbk.tsv", tmp_path / "absent.tsv", tmp_path):
        code, _, err = command_line(untouched, "--data", path, "--device", "cpu")
        assert code == 2 and f"读不了 {path}" in complaint(err)
    assert not untouched.OUTPUTS.exists()
    with_bom = tmp_path / "bom.tsv"
    with_bom.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert untouched.load_messages(with_bom) == [tuple(line.split("\t")) for line in GOOD.splitlines()]  # 记事本存的也认


# ---- 模型、损失、训练：与独立实现比较 ----


def make_classifier(module, seed=0, whole_model=False):
    torch.manual_seed(seed)
    model = module.GPTModel(TINY | {"drop_rate": 0.0})
    module.add_classification_head(model, 2)
    if whole_model:
        model.requires_grad_(True)
    return model


@pytest.fixture(scope="module")
def make_loaders(finetune, rows, tokenizer, tmp_path_factory):
    """make_loaders() → 48 条训练、20 条验证，填充到 24。"""
    folder = tmp_path_factory.mktemp("csv")
    numbered = [({"ham": 0, "spam": 1}[label], text) for label, text in finetune.create_balanced_dataset(rows)]
    train, val, _ = finetune.random_split(numbered, 0.7, 0.1)
    finetune.to_csv(train[:48], folder / "train.csv")
    finetune.to_csv(val[:20], folder / "validation.csv")

    def make():
        datasets = [finetune.SpamDataset(folder / f"{name}.csv", tokenizer, max_length=24) for name in ("train", "validation")]
        loader = torch.utils.data.DataLoader(datasets[0], batch_size=8, shuffle=True, drop_last=True)
        return loader, torch.utils.data.DataLoader(datasets[1], batch_size=8)

    return make


def test_head_and_frozen_layers(finetune):
    torch.manual_seed(0)
    model = finetune.GPTModel(TINY)
    torch.manual_seed(123)
    finetune.add_classification_head(model, num_classes=2)
    trained = {name.split(".")[0] + ("." + name.split(".")[1] if "trf" in name else "") for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"trf_blocks.1", "final_norm", "out_head"}
    torch.manual_seed(123)
    assert torch.equal(model.out_head.weight, torch.nn.Linear(TINY["emb_dim"], 2).weight)  # 与原书同一个种子；冻结不用随机数
    assert model(torch.tensor([[1, 2, 3, 4]])).shape == (1, 4, 2)
    large = {"vocab_size": 50257, "context_length": 1024, "emb_dim": 768, "n_heads": 12, "n_layers": 12, "drop_rate": 0.0, "qkv_bias": True}
    with torch.device("meta"):
        large = finetune.GPTModel(large)
        finetune.add_classification_head(large)
    assert sum(p.numel() for p in large.parameters() if p.requires_grad) == 7_090_946


@pytest.mark.parametrize("num_batches", [None, 1, 2, 100])
def test_accuracy_and_loss_agree_with_reference(num_batches, finetune, reference, make_loaders):
    model, (_, loader) = make_classifier(finetune, seed=4), make_loaders()
    assert finetune.calc_accuracy_loader(loader, model, CPU, num_batches) == reference.calc_accuracy_loader(loader, model, CPU, num_batches)
    with torch.no_grad():
        assert finetune.calc_loss_loader(loader, model, CPU, num_batches) == pytest.approx(reference.calc_loss_loader(loader, model, CPU, num_batches), abs=1e-6)


def test_empty_loader_is_nan(finetune):
    assert np.isnan(finetune.calc_accuracy_loader([], make_classifier(finetune), CPU)) and np.isnan(finetune.calc_loss_loader([], make_classifier(finetune), CPU))


@pytest.mark.parametrize("whole_model", [False, True], ids=["最后一块", "整个模型"])
def test_training_agrees_with_reference(whole_model, finetune, reference, make_loaders, capsys):
    """同样的起点和种子，逐步训练两遍：每次评估的损失、每轮的准确率、最后的权重、随机数的位置都相同。"""
    results = []
    for module in (finetune, reference):
        model = make_classifier(finetune, seed=3, whole_model=whole_model)
        frozen = model.pos_emb.weight.detach().clone()
        loaders = make_loaders()
        torch.manual_seed(123)
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.1)
        history = module.train_classifier_simple(model, *loaders, optimizer, CPU, num_epochs=3, eval_freq=2, eval_iter=2)
        assert torch.equal(frozen, model.pos_emb.weight) != whole_model
        results.append((history, [p.detach() for p in model.parameters()], torch.get_rng_state()))
    (ours, weights, state), (theirs, their_weights, their_state) = results
    assert ours[2] == theirs[2] and ours[3] == theirs[3] and ours[4] == theirs[4] == 3 * 48 and len(ours[0]) == 9
    assert ours[0] == pytest.approx(theirs[0], abs=1e-5) and ours[1] == pytest.approx(theirs[1], abs=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(weights, their_weights)) and torch.equal(state, their_state)
    assert ours[0][-1] < ours[0][0]


def test_signatures_are_the_books(finetune, reference):
    """函数的参数与原书作者的实现同名、同序、同默认值：照着书调用，不会说不认识哪个参数。"""
    import inspect

    names = ["calc_accuracy_loader", "calc_loss_batch", "calc_loss_loader", "evaluate_model", "train_classifier_simple", "plot_values", "classify_review", "SpamDataset"]
    for name in names:
        assert inspect.signature(getattr(finetune, name)) == inspect.signature(getattr(reference, name)), name
    assert list(inspect.signature(finetune.random_split).parameters)[1:] == ["train_frac", "validation_frac"]


def test_the_run_follows_the_notebook(project, finetune, reference, small_data, tokenizer, tmp_path, command_line, monkeypatch):
    """整个流程与原书的笔记本相同：哪里设种子、量几批、哪个先哪个后。用原书作者的函数照笔记本走一遍，每个数都要一样。"""
    for name, value in {"EVAL_FREQ": 3, "NUM_EPOCHS": 3, "LEARNING_RATE": 3e-3}.items():
        monkeypatch.setattr(finetune, name, value)
    code, output, err = command_line(finetune, "--data", small_data, "--device", "cpu")
    assert code == 0 and "✗" not in output, err

    frame = reference.create_balanced_dataset(frame_of(small_data))
    frame["Label"] = frame["Label"].map({"ham": 0, "spam": 1})
    datasets = []
    for number, part in enumerate(reference.random_split(frame, 0.7, 0.1)):
        part.to_csv(tmp_path / f"{number}.csv", index=None)
        datasets.append(reference.SpamDataset(tmp_path / f"{number}.csv", tokenizer, datasets[0].max_length if datasets else None))
    torch.manual_seed(123)
    loaders = [torch.utils.data.DataLoader(dataset, batch_size=8, shuffle=number == 0, drop_last=number == 0) for number, dataset in enumerate(datasets)]
    model = finetune.GPTModel(TINY | {"drop_rate": 0.0})
    model.load_state_dict(torch.load(project / "ch05" / "outputs" / "gpt_mini.pth", weights_only=True)["model"])
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
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
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
    """原书第一次印刷的 shape[1] 是嵌入维度：这里 n_ctx 是 128、d 是 16，写错就会把短信截到 16 个词元。"""
    model, seen = make_classifier(finetune), []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for max_length, expected in [(60, 60), (None, 90), (128, 128), (500, 128)]:
        finetune.classify_review("word " * 89 + "end", model, tokenizer, CPU, max_length)
        assert seen[-1].shape == (1, expected), max_length
    finetune.classify_review("word", model, tokenizer, CPU, 5, pad_token_id=7)
    assert seen[-1].tolist() == [[4775, 7, 7, 7, 7]]
    finetune.classify_review("<|endoftext|>", model, tokenizer, CPU, 5)  # 当普通的字，不报错


@pytest.mark.parametrize("label", ["loss", "accuracy"])
def test_pictures(label, finetune, tmp_path, monkeypatch):
    """两条横轴和纵轴都有名字；只有一个点时也画得出来。"""
    monkeypatch.setattr(finetune, "OUTPUTS", tmp_path)
    monkeypatch.setattr(finetune.plt, "close", lambda figure: None)  # 留着图，看看上面写了什么
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # 缺字会警告
        for values in ([0.9, 0.5, 0.2], [0.5]):
            finetune.plot_values(torch.linspace(0, 2, len(values)), torch.linspace(0, 80, len(values)), values, values, label)
            axis, top = finetune.plt.gcf().axes
            assert axis.get_xlabel() == "轮（epoch）" and axis.get_ylabel() == {"loss": "损失", "accuracy": "准确率"}[label] and top.get_xlabel() == "看过的样本数"
            assert (tmp_path / f"{label}-plot.png").stat().st_size > 8_000
    monkeypatch.undo()
    finetune.plt.close("all")


# ---- 命令行：从头到尾 ----


def test_finetuning_from_start_to_end(project, finetune, small_data, command_line, monkeypatch):
    """微调、存下、再判断；--quick 练的另存一份，不会盖掉好的；124M 也各存各的。"""
    monkeypatch.setattr(finetune, "NUM_EPOCHS", 2)
    given = ["--data", small_data, "--device", "cpu"]
    code, out, err = command_line(finetune, *given)
    assert code == 0 and "✗" not in out and out.count("✓") == 3 and str(small_data) in out, err
    assert "练习 6.2" in out and re.search(r"一律答一类的准确率 [56]\d\.\d\d%", out)  # 与底数比；mini 的结果有多不好，也说出来
    mini = finetune.OUTPUTS / "review_classifier_mini.pth"
    saved, before = torch.load(mini, weights_only=True), mini.read_bytes()
    assert saved.keys() == {"config", "model", "max_length"} and saved["model"]["out_head.weight"].shape == (2, 16) and saved["config"]["drop_rate"] == 0.0
    for text in ("You won a prize, call now", 'quotes " and; commas, 你好 <|endoftext|>', "x " * 500):
        code, out, err = command_line(finetune, "--classify", text, "--device", "cpu")
        assert code == 0 and err == "" and re.search(r"^(spam|not spam)　", out, re.M), err
        assert re.findall(r"这条有 (\d+) 个词元，只看了前 (\d+) 个", out) == [("501", str(saved["max_length"]))] * (text[0] == "x")  # 截掉了就说
    pictures = {path: path.read_bytes() for path in finetune.OUTPUTS.glob("*-plot.png") if "quick" not in path.name}
    assert len(pictures) == 2
    for flags, name in ((["--quick"], "quick"), (["--size", "124M"], "124M")):
        code, out, err = command_line(finetune, *given, *flags)
        assert code == 0 and "✗" not in out and (finetune.OUTPUTS / f"review_classifier_{name}.pth").is_file(), err
        if name == "quick":  # 图也是另存的
            assert all(path.read_bytes() == picture for path, picture in pictures.items())
            assert "loss-quick-plot.png、accuracy-quick-plot.png" in out and (finetune.OUTPUTS / "accuracy-quick-plot.png").is_file()
    assert "gpt2-124M.pth" in out and mini.read_bytes() == before
    assert not list(finetune.OUTPUTS.glob("*.part"))


def test_long_messages_are_cut_to_the_context(finetune, tokenizer, tmp_path):
    path = write_rows(tmp_path / "long.tsv", [("ham", "word " * 300)] * 8 + [("spam", "win " * 300)] * 8)
    loaders, max_length = finetune.make_loaders(path, tokenizer, 128)
    assert max_length == 128 and next(iter(loaders[0]))[0].shape == (8, 128)
    loaders, max_length = finetune.make_loaders(path, tokenizer, 128, max_length=50)
    assert max_length == 50 and next(iter(loaders[2]))[0].shape[1] == 50
    (tmp_path / "edge.tsv").write_text("ham\ta\nspam\tb\n" * 6, encoding="utf-8")  # 最少的短信：正好凑得出一批
    loaders, max_length = finetune.make_loaders(tmp_path / "edge.tsv", tokenizer, 128)
    assert [len(loader) for loader in loaders] == [1, 1, 1] and max_length == 1


def test_refuses(untouched, small_data, command_line):
    cases = [["--size", "3B"], ["--device", "tpu"], ["--nosuch"], ["--classify", ""], ["--classify", "  "], ["--classify", "hi"]]
    cases += [["--device", name] for name, found in [("mps", torch.backends.mps.is_available()), ("cuda", torch.cuda.is_available())] if not found]
    for case in cases:
        code, _, err = command_line(untouched, "--data", small_data, *case)
        assert code == 2 and "Traceback" not in err, case
        if case[0] in ("--device", "--classify"):
            assert {"hi": "请先运行", "": "是空的", "  ": "是空的"}.get(case[1], "没有设备") in complaint(err)
    assert not untouched.OUTPUTS.exists()


class Dangerous:
    """读它的人会建一个文件：用来看代码有没有被执行。"""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_files_are_never_executed(tmp_path, command_line):
    """权重和分类器都只当数据读：里面夹带的代码不会执行。"""
    folder = make_project(tmp_path)
    module = load(folder / "ch06" / "main" / "gpt_class_finetune.py")
    module.OUTPUTS.mkdir()
    for path, arguments in [(folder / "ch05" / "outputs" / "gpt_mini.pth", ["--quick"]), (module.OUTPUTS / "review_classifier_mini.pth", ["--classify", "hi"])]:
        torch.save({"config": TINY, "model": Dangerous(tmp_path / "executed")}, path)
        code, _, err = command_line(module, *arguments, "--device", "cpu")
        assert code == 2 and f"{path} 读不出来" in complaint(err)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"", b"hello\n", None], ids=["空的", "文本", "截断的"])
def test_broken_weights(content, tmp_path, command_line):
    """坏了的权重和分类器：一句中文，退出码 2，什么都不写。"""
    folder = make_project(tmp_path)
    module = load(folder / "ch06" / "main" / "gpt_class_finetune.py")
    mini = folder / "ch05" / "outputs" / "gpt_mini.pth"
    mini.write_bytes(mini.read_bytes()[:5000] if content is None else content)
    code, _, err = command_line(module, "--quick", "--device", "cpu")
    assert code == 2 and f"{mini} 读不出来" in complaint(err) and not module.OUTPUTS.exists()
    module.OUTPUTS.mkdir()
    classifier = shutil.copy(folder / "ch05" / "outputs" / "gpt2-124M.pth", module.OUTPUTS / "review_classifier_mini.pth")  # 没换过输出层的
    code, _, err = command_line(module, "--classify", "hi", "--device", "cpu")
    assert code == 2 and f"{classifier} 读不出来" in complaint(err)


def test_bad_numbers_are_named(tmp_path, small_data, command_line):
    """权重、分类器里有 nan 或 inf：一句中文，说出是哪个张量；不会等到损失坏了才怪学习率。"""
    folder = make_project(tmp_path)
    module = load(folder / "ch06" / "main" / "gpt_class_finetune.py")
    assert command_line(module, "--data", small_data, "--quick", "--device", "cpu")[0] == 0
    mini, classifier = folder / "ch05" / "outputs" / "gpt_mini.pth", module.OUTPUTS / "review_classifier_quick.pth"
    exercise = load(folder / "ch06" / "experiments" / "exercise_6_1_context_length.py")
    for path, name, bad in [(mini, "trf_blocks.1.att.W_key.weight", torch.nan), (classifier, "out_head.weight", torch.inf)]:
        saved = torch.load(path, weights_only=True)
        saved["model"][name][0, 0] = bad
        torch.save(saved, path)
        code, _, err = command_line(module, "--data", small_data, "--quick", "--device", "cpu", *["--classify", "hi"] * (path == classifier))
        assert code == 2 and f"{path} 里的 {name} 有 nan 或 inf" in complaint(err)
    code, _, err = command_line(exercise, "--data", small_data, "--quick", "--device", "cpu")
    assert code == 2 and f"{mini} 里的 trf_blocks.1.att.W_key.weight 有 nan 或 inf" in complaint(err)
    mini.write_bytes(b"hello")
    code, _, err = command_line(exercise, "--data", small_data, "--quick", "--device", "cpu")
    assert code == 2 and f"{mini} 读不出来" in complaint(err)


def test_ctrl_c(finetune, small_data, command_line, monkeypatch):
    """训练或存到一半按 Ctrl-C：没有 traceback，退出码 130，以前的分类器还在，不留下半个文件。"""
    old = finetune.OUTPUTS / "review_classifier_quick.pth"
    finetune.OUTPUTS.mkdir(exist_ok=True)
    old.write_bytes(b"old")

    def stop(*given):
        if isinstance(given[-1], Path):
            given[-1].write_bytes(b"half")
        raise KeyboardInterrupt

    for owner, name in ((finetune, "calc_loss_batch"), (finetune.torch, "save")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, stop)
            code, out, err = command_line(finetune, "--data", small_data, "--quick", "--device", "cpu")
        assert code == 130 and "停下了" in out.splitlines()[-1] and "Traceback" not in err, name
    assert old.read_bytes() == b"old" and not list(finetune.OUTPUTS.glob("*.part"))
    old.unlink()


def test_full_disk_leaves_no_half_csv(untouched, tmp_path, command_line, monkeypatch, small_data):
    """写 CSV 写到一半磁盘满了：原来的还在，写在旁边的半个文件不留下；总结脚本和练习都是一句中文。"""
    path = tmp_path / "train.csv"
    path.write_text("old", encoding="utf-8")

    def rows():
        yield 1, "half"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        untouched.to_csv(rows(), path)
    assert [item.name for item in tmp_path.iterdir()] == ["train.csv"] and path.read_text(encoding="utf-8") == "old"
    for script in [untouched, load(Path(untouched.__file__).parents[1] / "experiments" / "exercise_6_2_whole_model.py")]:
        monkeypatch.setattr(script, "to_csv", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device", str(path))))
        code, _, err = command_line(script, "--data", small_data, "--quick", "--device", "cpu")
        assert code == 2 and f"读写不了 {path}" in complaint(err)


def test_what_goes_wrong_while_training(finetune, small_data, command_line, monkeypatch):
    """损失坏了、写不下：一句中文，退出码 2；上一次的分类器还在，不留下半个文件。"""
    old = finetune.OUTPUTS / "review_classifier_quick.pth"
    finetune.OUTPUTS.mkdir(exist_ok=True)
    old.write_bytes(b"old")
    given = ["--data", small_data, "--quick", "--device", "cpu"]
    with monkeypatch.context() as patch:
        patch.setattr(finetune, "LEARNING_RATE", 1e30)
        code, _, err = command_line(finetune, *given)
        assert code == 2 and "学习率" in complaint(err)

    def full(weights, path):
        Path(path).write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 10112 vs 10006")  # 磁盘满了，PyTorch 这样说

    with monkeypatch.context() as patch:
        patch.setattr(finetune.torch, "save", full)
        code, _, err = command_line(finetune, *given)
        assert code == 2 and f"存不下 {old}" in complaint(err)
    with monkeypatch.context() as patch:
        patch.setattr(finetune.plt.Figure, "savefig", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        saved = []
        patch.setattr(finetune, "save_model", lambda weights, path: saved.append(path))
        code, _, err = command_line(finetune, *given)
        assert code == 2 and "读写不了" in complaint(err) and saved == [old]  # 先存分类器，再画图
    assert old.read_bytes() == b"old" and not list(finetune.OUTPUTS.glob("*.part"))
    old.unlink()


def test_other_batch_sizes(finetune, small_data, command_line, monkeypatch):
    """改 BATCH_SIZE：--quick 跟着变；一批都凑不出，就说凑不出，不会存下没有训练过的。"""
    given = ["--data", small_data, "--quick", "--device", "cpu"]
    monkeypatch.setattr(finetune, "BATCH_SIZE", 16)
    code, out, err = command_line(finetune, *given)
    assert code == 0 and "批　　训练 3　" in out and "✗" not in out, err
    monkeypatch.setattr(finetune, "BATCH_SIZE", 64)
    code, _, err = command_line(finetune, *given)
    assert code == 2 and "（64 条）" in complaint(err)


# ---- 每个脚本各跑一遍 ----


@pytest.fixture
def walk(monkeypatch, capsys, tmp_path):
    """walk(脚本) → 退出码、stdout、stderr：在另一个文件夹里把逐步讲解从头跑到尾，就像在终端里那样。"""
    monkeypatch.delenv("LLM_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)

    def call(script):
        monkeypatch.setattr(sys, "argv", [str(script)])
        try:
            runpy.run_path(str(script), run_name="__main__")
            code = 0
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return call


@pytest.mark.parametrize("script", WALKTHROUGHS)
def test_walkthrough_runs(script, project, walk, tmp_path):
    """退出码 0，没有 ✗，不写别的地方。"""
    if "example_06" in script and not (project / "ch06" / "outputs" / "review_classifier_mini.pth").is_file():
        assert walk(project / "ch06" / "main" / "example_05_finetune_classifier.py")[0] == 0
    code, out, err = walk(project / "ch06" / script)
    wrong = [line for line in out.splitlines() if "✗" in line]
    if "example_06" in script:  # 随机的小模型学不会，只有说准确率的那条可以不对
        wrong = [line for line in wrong if "高过一律答一类" not in line]
    assert code == 0 and not wrong and "✓" in out and list(tmp_path.iterdir()) == [], out + err
    if "example_04" in script:  # 6-09：书上微调前的准确率，就是那 10 批里 spam 的比例；自带的数据条数相同，标签的次序也就相同
        assert "一律答 spam 的准确率　训练 46.25%　验证 45.00%　测试 48.75%" in out


@pytest.mark.parametrize("script", PROGRAMS)
def test_program_runs(script, project, tmp_path, command_line):
    result = run(project / "ch06" / script, "--quick", "--device", "cpu", cwd=tmp_path)
    assert result.returncode == 0 and "✗" not in result.stdout and "✓" in result.stdout, result.stdout + result.stderr
    assert "messages.tsv" in result.stdout and "gpt_mini.pth" in result.stdout and list(tmp_path.iterdir()) == []
    module = load(project / "ch06" / script)
    code, out, _ = command_line(module, "--help")
    assert code == 0 and all(flag in out for flag in ("--size", "--data", "--device", "--quick"))
    for case in (["--nosuch"], ["--size", "3B"], ["--device", "tpu"], ["--data", tmp_path / "absent.tsv"]):
        code, _, err = command_line(module, *case)
        assert code == 2 and "Traceback" not in err, case
    assert f"读不了 {tmp_path / 'absent.tsv'}" in complaint(err)


@pytest.fixture(scope="module")
def empty_project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("empty"), mini=False)


@pytest.mark.parametrize("script", [script for script in WALKTHROUGHS + PROGRAMS if "example_01" not in script and "example_02" not in script])
def test_missing_mini(script, empty_project, walk):
    """没有训练过 mini：一句中文说运行哪条命令，退出码 2；绝不自己训练一个。"""
    code, _, err = walk(empty_project / "ch06" / script)
    command = "ch06/main/example_05_finetune_classifier.py" if "example_06" in script else "ch05/main/gpt_train.py"
    assert code == 2 and f"请先运行 python {command}" in complaint(err)
    assert list((empty_project / "ch05" / "outputs").iterdir()) == []


@pytest.mark.parametrize("script", WALKTHROUGHS[2:5])
def test_walkthrough_with_124m(script, project, walk):
    """把 WEIGHTS 换成 gpt2-124M.pth：代码走得通；核对书上的数的那几条，随机的小模型当然对不上，别的都是 ✓。"""
    path = project / "ch06" / "main" / f"with_124m_{Path(script).name}"
    source = (CHAPTER / script).read_text(encoding="utf-8")
    assert source.count('WEIGHTS = "gpt_mini.pth"') == 1
    path.write_text(source.replace('WEIGHTS = "gpt_mini.pth"', 'WEIGHTS = "gpt2-124M.pth"').replace("review_classifier_mini", "review_classifier_other"), encoding="utf-8")
    code, out, err = walk(path)
    wrong = [line for line in out.splitlines() if "✗" in line]
    assert code == 0 and "gpt2-124M.pth" in out and all("书上" in line for line in wrong), out + err
    assert wrong or "example_03" not in script


def test_exercises_change_only_one_thing(project, finetune, small_data, command_line, monkeypatch):
    """三个练习的第一行都与 gpt_class_finetune.py 的结果相同；第二行只改了题目说的那一处。"""
    given = ["--data", small_data, "--device", "cpu"]
    monkeypatch.setattr(finetune, "NUM_EPOCHS", 2)
    monkeypatch.setattr(finetune, "LEARNING_RATE", 3e-3)
    _, output, _ = command_line(finetune, *given)
    expected = re.findall(r"微调后的准确率　训练 ([\d.]+%)　验证 ([\d.]+%)　测试 ([\d.]+%)", output)[0]
    for script in PROGRAMS[1:]:
        module = load(project / "ch06" / script)
        monkeypatch.setattr(module, "NUM_EPOCHS", 2)
        monkeypatch.setattr(module, "LEARNING_RATE", 3e-3)
        code, output, err = command_line(module, *given)
        assert code == 0 and "✗" not in output, err
        first, second = re.findall(r"([\d.]+%) +([\d.]+%) +([\d.]+%) +\d+ 秒", output)
        assert first == expected, script
        starts = re.findall(r"第   0 步　训练损失 ([\d.]+)", output)
        assert len(starts) == 2 and starts[0] != starts[1], script  # 第一步就不同：改动真的生效了
    assert first != second


def test_every_script_is_listed():
    """新写的脚本必须加进上面的清单，也必须写进 README。"""
    found = sorted(f"{path.parent.name}/{path.name}" for folder in ("main", "experiments") for path in (CHAPTER / folder).glob("*.py"))
    assert found == sorted(WALKTHROUGHS + PROGRAMS + EXPERIMENTS)
    readme = (CHAPTER / "README.md").read_text(encoding="utf-8")
    assert not [script for script in found if script.split("/")[1] not in readme]
    assert all(f"6.{number}" in readme for number in range(1, 9))


# ---- 用真的 mini ----


@needs_mini
def test_padding_hides_the_message_from_an_untuned_classifier(tmp_path):
    """6.5 节说的：没微调过，填充之后各条短信的分数差不多，全落在同一边；不填充就不会。"""
    folder = make_project(tmp_path, mini=False)
    shutil.copy(MINI, folder / "ch05" / "outputs")
    result = run(folder / "ch06" / "main" / "example_03_classification_head.py", cwd=folder)
    assert result.returncode == 0 and "✗" not in result.stdout, result.stdout + result.stderr
    counts = [int(count) for count in re.findall(r"答 spam +(\d+) 条", result.stdout)]
    assert counts[0] in (0, 100) and 20 < counts[1] < 80
    assert int(re.search(r"差别只剩 (\d+)%", result.stdout)[1]) < 50
    result = run(folder / "ch06" / "main" / "example_04_loss_and_accuracy.py", cwd=folder)
    assert result.returncode == 0 and "✗" not in result.stdout, result.stdout + result.stderr
    shares = re.search(r"答 spam 的占　　　　训练 (\S+)　验证 (\S+)　测试 (\S+)", result.stdout).groups()
    assert len(set(shares)) == 1 and shares[0] in ("0.00%", "100.00%")


@needs_mini
def test_finetuning_the_real_mini(tmp_path):
    """书上的算法，真的 mini，自带的短信：测试准确率在八成上下，与 README 写的差不多；然后读回来判断短信。

    换了机器或线程数，加法的次序不同，训练会走出另一条路，所以留几个百分点。
    """
    folder = make_project(tmp_path, mini=False)
    shutil.copy(MINI, folder / "ch05" / "outputs")
    result = run(folder / "ch06" / "main" / "example_05_finetune_classifier.py", cwd=folder, timeout=1800)
    assert result.returncode == 0 and "✗" not in result.stdout, result.stdout + result.stderr
    accuracy = float(re.search(r"全部数据上的准确率.*测试 ([\d.]+)%", result.stdout)[1])
    assert 75 < accuracy < 95, result.stdout
    names = {path.name for path in (folder / "ch06" / "outputs").iterdir()}
    assert names == {"train.csv", "validation.csv", "test.csv", "loss-plot.png", "accuracy-plot.png", "review_classifier_mini.pth"}
    result = run(folder / "ch06" / "main" / "example_06_classify_review.py", cwd=folder)
    assert result.returncode == 0 and "✗" not in result.stdout, result.stdout + result.stderr
    assert float(re.search(r"填充到 60 .*?([\d.]+)%", result.stdout)[1]) == accuracy  # 一条一条判断，与一批一批判断，结果相同
    text = "Congratulations! You have won a new phone. Call 08081 570211 now to claim it"
    result = run(folder / "ch06" / "main" / "gpt_class_finetune.py", "--classify", text, "--device", "cpu", cwd=folder)
    assert result.returncode == 0 and re.search(r"^spam　", result.stdout, re.M), result.stdout + result.stderr
