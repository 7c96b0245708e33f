"""附录 A 的测试：像读者那样把每个脚本各跑一遍，读它打印的数字；torchrun 的 2 个进程；与 llms_from_scratch 的比较；用错时的报错。

运行：python -m pytest appendix-A/tests
"""

import functools
import importlib.util
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from once import once
from torch.utils.data import DataLoader

APPENDIX = Path(__file__).resolve().parent.parent
SCRIPTS = {
    "A.2 张量": "main/example_01_tensors.py",
    "A.3–A.4 自动求导": "main/example_02_autograd.py",
    "A.5 多层网络": "main/example_03_multilayer_network.py",
    "A.6–A.8 数据、训练、存取": "main/example_04_data_and_training.py",
    "A.9.1–A.9.2 设备": "main/example_05_devices.py",
    "A.9.3 DDP": "main/ddp_torchrun.py",
    "练习 A.1、A.2": "experiments/exercise_A_1_A_2_environment.py",
    "练习 A.3": "experiments/exercise_A_3_parameter_count.py",
    "练习 A.4": "experiments/exercise_A_4_matmul_timing.py",
}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
TORCHRUN_NAMES = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]
LOSSES = ["0.75", "0.65", "0.44", "0.13", "0.03", "0.00"]


@functools.cache
def load(name):
    """按路径导入一个脚本（逐步讲解的脚本会顺便跑一遍）。"""
    path = APPENDIX / SCRIPTS[name]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*command, cwd):
    """在别的文件夹里运行一条命令，只用 1 个线程；外面若恰好设了 torchrun 的环境变量，先去掉。"""
    env = {name: value for name, value in os.environ.items() if name not in TORCHRUN_NAMES}
    env |= {"PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run([str(part) for part in command], cwd=cwd, env=env, capture_output=True, encoding="utf-8", timeout=300)


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """printed(脚本) → 它打印的内容，每个只真正跑一次；"torchrun" 是用 2 个进程跑 DDP。"""

    @functools.cache
    def output(name):
        folder = tmp_path_factory.mktemp("elsewhere")
        done = run(*TORCHRUN, APPENDIX / SCRIPTS["A.9.3 DDP"], cwd=folder) if name == "torchrun" else once(APPENDIX / SCRIPTS[name])
        assert done.returncode == 0 and (name == "torchrun" or done.stderr == ""), done.stderr  # torchrun 自己会说几句英文
        assert list(folder.iterdir()) == [] and getattr(done, "left", []) == [], "脚本在当前文件夹里留下了文件"
        return done.stdout

    return output


@pytest.fixture
def command_line(monkeypatch, capsys):
    """command_line(脚本, 参数…) → 退出码、stdout、stderr；在本进程里跑，省去导入 PyTorch 的几秒。"""
    for name in TORCHRUN_NAMES:
        monkeypatch.delenv(name, raising=False)

    def call(name, *args):
        module = load(name)
        monkeypatch.setattr(sys, "argv", [Path(SCRIPTS[name]).name, *map(str, args)])
        code = 0
        try:
            module.main()
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def reference():
    return pytest.importorskip("llms_from_scratch.appendix_a", reason="没有装 llms-from-scratch，无法与它比较")


# ---- 每个脚本 ----


def test_every_script_is_listed():
    """多一个脚本，就要多一个测试，README 里也要有它。"""
    found = [path.relative_to(APPENDIX).as_posix() for folder in ("main", "experiments") for path in (APPENDIX / folder).glob("*.py")]
    assert sorted(found) == sorted(SCRIPTS.values())
    readme = (APPENDIX / "README.md").read_text(encoding="utf-8")
    assert all(path in readme for path in SCRIPTS.values())
    assert all(f"A.{section}" in readme for section in ("1", "2", "3", "4", "5", "6", "7", "8", "9.1", "9.2", "9.3"))


@pytest.mark.parametrize("name", [*SCRIPTS, "torchrun"])
def test_runs_as_a_reader_would(printed, name):
    """从别的文件夹直接运行：退出码 0，自查全过，不留文件。"""
    out = printed(name)
    assert "这个数字对吗？" in out and "✓" in out and "✗" not in out
    assert ("学到什么" in out) == name.startswith("练习")


# ---- 书上的数字 ----


def numbers_after(output, label, count):
    """标签之后的前 count 个数。"""
    assert output.count(label) == 1, f"输出里应当正好有一处「{label}」，有 {output.count(label)} 处"
    return [float(number) for number in re.findall(r"-?\d+\.?\d*(?:e[-+]\d+)?", output.split(label)[1])[:count]]


# 每行：编号、脚本、标签、应当打印的数。
BOOK = [
    ("A-01 复制", "A.2 张量", "torch.tensor 的那份：", "1 2 3 4 5 6 7 8"),
    ("A-01 共享", "A.2 张量", "torch.from_numpy 的那份：", "999 2 3 4 5 6 7 8"),
    ("A.2.3 原样", "A.2 张量", "2 行 3 列的矩阵\n", "1 2 3 4 5 6"),
    ("A.2.3 reshape", "A.2 张量", "reshape(3, 2)：\n", "1 2 3 4 5 6"),
    ("A.2.3 view", "A.2 张量", "view(3, 2)：\n", "1 2 3 4 5 6"),
    ("A.2.3 转置", "A.2 张量", "转置 T：", "1 4 2 5 3 6"),
    ("A-01 matmul", "A.2 张量", "matmul(T)：", "14 32 32 77"),
    ("A-01 @", "A.2 张量", "@ T：", "14 32 32 77"),
    ("A-02", "A.3–A.4 自动求导", "损失\ntensor(", "0.0852"),
    ("A-03 grad w", "A.3–A.4 自动求导", "损失对 w1 的梯度 (tensor(", "-0.0898"),
    ("A-03 grad b", "A.3–A.4 自动求导", "损失对 b 的梯度　 (tensor(", "-0.0817"),
    ("A-03 backward w", "A.3–A.4 自动求导", "w1.grad tensor(", "-0.0898"),
    ("A-03 backward b", "A.3–A.4 自动求导", "b.grad　 tensor(", "-0.0817"),
    ("累加的陷阱", "A.3–A.4 自动求导", "backward 两次之后 w1.grad =", "-0.1797"),
    ("清零之后", "A.3–A.4 自动求导", "清零再 backward：w1.grad =", "-0.0898"),
    ("A-04 第一行", "A.5 多层网络", "种子 123，第一层的权重\nParameter containing:\ntensor(", "-.0577 .0047 -.0702 .0222 .1260 .0865"),
    ("A-04 参数", "A.5 多层网络", "可训练的参数一共", "2213"),
    ("A-05 logits", "A.5 多层网络", "一个随机样本的 logits\n", "-.1262 .1080 -.1792"),
    ("A-05 no_grad", "A.5 多层网络", "没有 grad_fn 了\n", "-.1262 .1080 -.1792"),
    ("A-05 softmax", "A.5 多层网络", "三类的概率\n", ".3113 .3934 .2952"),
    ("A.6 第一遍", "A.6–A.8 数据、训练、存取", "分成 3 批\n第 1 批： ", "2.3 -1.1 -.9 2.9 1 0 2 -1.2 3.1 -.5 2.6 0 0 3 2.7 -1.5 1"),
    ("A.6 drop_last", "A.6–A.8 数据、训练、存取", "只剩 2 批\n第 1 批： ", "-1.2 3.1 -.5 2.6 0 0 2 2.3 -1.1 -.9 2.9 1 0"),
    ("A.7 logits", "A.6–A.8 数据、训练、存取", "5 个训练样本的 logits\n", "2.8569 -4.1618 2.5382 -3.7548 2.0944 -3.1820 -1.4814 1.4816 -1.7176 1.7342"),
    ("A.7 概率", "A.6–A.8 数据、训练、存取", "\n概率\n", ".9991 .0009 .9982 .0018 .9949 .0051 .0491 .9509 .0307 .9693"),
    ("A.7 预测", "A.6–A.8 数据、训练、存取", "不做 softmax，直接 argmax", "0 0 0 1 1"),
    ("A.7 猜对几个", "A.6–A.8 数据、训练、存取", "猜对几个：", "5"),
    ("A.7 准确率", "A.6–A.8 数据、训练、存取", "准确率　训练集", "1.0 1.0"),
    ("A.9.1 相加", "A.9.1–A.9.2 设备", "\n在 cpu 上相加", "5 7 9"),
    ("A.9.2 准确率", "A.9.1–A.9.2 设备", "准确率　训练集", "1.0 1.0"),
    ("练习 A.3", "练习 A.3", "③ PyTorch 数：", "752"),
    ("练习 A.3 每层", "练习 A.3", "2 × 30 + 30 =", "90"),
    ("练习 A.1", "练习 A.1、A.2", "  cpu   相对误差", "0"),
]


@pytest.mark.parametrize(("row", "name", "label", "expected"), BOOK, ids=[row[0] for row in BOOK])
def test_book_numbers(printed, row, name, label, expected):
    want = [float(number) for number in expected.split()]
    assert numbers_after(printed(name), label, len(want)) == pytest.approx(want, abs=6e-5)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("A.2 张量", "整数列表 → torch.int64　小数列表 → torch.float32"),
        ("A.2 张量", "shape = torch.Size([2, 3])"),
        ("A.2 张量", "transposed.view(6)：RuntimeError: view size is not compatible"),
        ("A.3–A.4 自动求导", "AddBackward0 → MulBackward0 → AccumulateGrad"),
        ("A.3–A.4 自动求导", "Trying to backward through the graph a second time"),
        ("A.5 多层网络", "形状 (30, 50)"),
        ("A.5 多层网络", "grad_fn=<AddmmBackward0>"),
        ("A.6–A.8 数据、训练、存取", "<All keys matched successfully>"),
        ("A.6–A.8 数据、训练、存取", "size mismatch for layers.4.weight"),
        ("A.6–A.8 数据、训练、存取", "填之后 0.0\n"),
        ("A.9.1–A.9.2 设备", "的张量：RuntimeError: "),
    ],
)
def test_printed_text(printed, name, text):
    assert text in printed(name)


@pytest.mark.parametrize("name", ["A.6–A.8 数据、训练、存取", "A.9.1–A.9.2 设备"])
def test_training_losses(printed, name):
    """A-07、A-09：六步的损失与书上相同，换设备也相同。"""
    assert re.findall(r"训练损失 (\d\.\d\d)", printed(name)) == LOSSES


def test_matmul_answer(printed):
    """练习 A.4：答案就是题目那一行量到的微秒数，GFLOP/s 由它算出。"""
    lines = printed("练习 A.4").splitlines()
    row = lines[next(i for i, line in enumerate(lines) if "← 题目" in line) + 1]
    assert "(100, 200) @ (200, 300)　12,000,000 次运算　← 题目" in lines
    micro, gflops = [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\.\d", row)]
    assert row.split()[0] == "cpu" and numbers_after(printed("练习 A.4"), "答案：cpu ", 1) == [micro]
    assert micro * gflops * 1000 == pytest.approx(12_000_000, rel=0.05)


# ---- 组件：与独立实现一致 ----


def test_network_matches_reference(reference):
    """同一个种子，权重、名字、输出都逐位相同。"""
    models = []
    for build in (load("A.9.3 DDP").NeuralNetwork, reference.NeuralNetwork):
        torch.manual_seed(5)
        models.append(build(7, 4))
    x = torch.randn(6, 7)
    assert list(models[0].state_dict()) == list(models[1].state_dict()) and torch.equal(models[0](x), models[1](x))


def test_dataset_matches_reference(reference):
    x, y = torch.randn(4, 3), torch.tensor([2, 0, 1, 1])
    ours, theirs = load("A.9.3 DDP").ToyDataset(x, y), reference.ToyDataset(x, y)
    assert len(ours) == len(theirs) == 4
    assert all(torch.equal(ours[i][0], theirs[i][0]) and ours[i][1] == theirs[i][1] for i in range(4))


@pytest.mark.parametrize("name", ["A.6–A.8 数据、训练、存取", "A.9.1–A.9.2 设备", "A.9.3 DDP"])
def test_accuracy_with_uneven_batches(capsys, name):
    """3 个样本、每批 2 个，对 2 个：是 2/3，不是各批准确率的平均 (0.5 + 1) / 2。"""
    module = load(name)
    loader = DataLoader(module.ToyDataset(torch.tensor([[0.0, 1], [1, 0], [1, 0]]), torch.tensor([0, 0, 0])), batch_size=2)
    assert module.compute_accuracy(torch.nn.Identity(), loader, *([] if "A.8" in name else ["cpu"])) == pytest.approx(2 / 3)


# ---- A.9.3：2 个进程 ----

FEATURES = torch.tensor([[-1.2, 3.1], [-0.9, 2.9], [-0.5, 2.6], [2.3, -1.1], [2.7, -1.5]])
LABELS = torch.tensor([0, 0, 0, 1, 1])
DRIVER = """
import importlib.util, os, sys, torch
spec = importlib.util.spec_from_file_location("ddp", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
torch.manual_seed(123)
torch.save(module.main(rank, world_size, 3, torch.device("cpu")).state_dict(), f"{sys.argv[2]}/{rank}.pth")
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_training_equals_one_process(reference, tmp_path, processes):
    """几个进程训练出的参数逐位相同，又与别人写的网络、一个进程、不用 DDP、用接起来的大批训练的相同；名字里没有 module.。"""
    (tmp_path / "driver.py").write_text(DRIVER, encoding="utf-8")
    launcher = TORCHRUN if processes == 2 else [sys.executable]
    done = run(*launcher, tmp_path / "driver.py", APPENDIX / SCRIPTS["A.9.3 DDP"], tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shares = [[[int(i) for i in share.split(", ")] for share in re.findall(rf"第 {epoch} 轮分到的样本 \[([\d, ]+)\]", done.stdout)] for epoch in (1, 2, 3)]
    assert all(len(share) == processes and set().union(*share) == set(range(5)) for share in shares) and shares[0] != shares[1]

    torch.manual_seed(123)
    model = reference.NeuralNetwork(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for share in shares:
        for start in range(0, len(share[0]) - 1, 2):
            chosen = [index for each in share for index in each[start : start + 2]]
            optimizer.zero_grad()
            F.cross_entropy(model(FEATURES[chosen]), LABELS[chosen]).backward()
            optimizer.step()
    states = [torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(processes)]
    for name, expected in model.state_dict().items():
        assert all(torch.equal(state[name], states[0][name]) for state in states)
        assert (states[0][name] - expected).abs().max() < 1e-6
    assert list(states[0]) == list(model.state_dict())


def test_torchrun_output(printed):
    """每个进程 3 轮、每轮 1 步，各有一行准确率；一行只有一个进程的话。"""
    out = printed("torchrun")
    assert "2 个进程，在 cpu 上" in out and "2 个进程的参数逐位相同（最多相差 0.0e+00）" in out
    for process in (0, 1):
        assert len(re.findall(rf"\[进程 {process}\] 第 [123]/3 轮　一批 2 个　训练损失 ", out)) == 3 and out.count(f"[进程 {process}] 准确率　训练 1.0　测试 1.0\n") == 1
    assert all(line.count("[进程") <= 1 for line in out.splitlines())


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_every_process_has_batches(monkeypatch, world_size):
    """几个进程都行：每个都有批可训，步数相同，数据相同，合起来用到每一个样本。"""
    module, loaders = load("A.9.3 DDP"), []
    monkeypatch.setattr(torch.distributed, "is_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: world_size)
    for rank in range(world_size):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        torch.manual_seed(123)
        loaders.append(module.prepare_dataset()[0])
    assert len({len(loader) for loader in loaders}) == 1 and len(loaders[0]) >= 1
    assert all(torch.equal(loader.dataset.features, loaders[0].dataset.features) for loader in loaders)
    assert {index for loader in loaders for index in loader.sampler} == set(range(len(loaders[0].dataset)))


@pytest.mark.parametrize(("device", "nccl", "backend"), [("cpu", True, "gloo"), ("cuda:1", True, "nccl"), ("cuda:1", False, "gloo")])
def test_backend_of_device(monkeypatch, device, nccl, backend):
    """显卡用 nccl，没有 nccl（Windows）或在 CPU 上用 gloo；显卡还要认准自己的那一块。"""
    asked, chosen = [], []
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: nccl)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda name, rank, world_size: asked.append((name, rank, world_size)))
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    load("A.9.3 DDP").ddp_setup(1, 2, torch.device(device))
    assert asked == [(backend, 1, 2)] and chosen == ([] if device == "cpu" else [torch.device(device)])


@pytest.mark.parametrize(
    ("launched", "gpus", "expected"),
    [
        (None, 0, (0, 1, "cpu")),  # 直接用 python 运行
        (None, 1, (0, 1, "cuda:0")),
        ((1, 2, 1, 2), 1, (1, 2, "cpu")),  # 2 个进程，1 块显卡：不够分
        ((1, 2, 1, 2), 2, (1, 2, "cuda:1")),
        ((3, 4, 1, 2), 2, (3, 4, "cuda:1")),  # 两台机器各 2 个：按本机编号选显卡
    ],
)
def test_rank_and_device(monkeypatch, launched, gpus, expected):
    """从 torchrun 的环境变量得知自己是谁、用哪块显卡。"""
    for name in TORCHRUN_NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in zip(TORCHRUN_NAMES, launched or ()):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    rank, world_size, device = load("A.9.3 DDP").from_torchrun()
    assert (rank, world_size, str(device)) == expected


def test_world_size_alone_is_not_torchrun(monkeypatch):
    """集群的作业系统会设 WORLD_SIZE；没有 LOCAL_RANK，就当作 1 个进程。"""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert load("A.9.3 DDP").from_torchrun()[:2] == (0, 1)


def test_waits_before_leaving(monkeypatch):
    """停半秒再 destroy_process_group：少了它，机器忙的时候 gloo 的线程会让进程崩溃。"""
    module, said = load("A.9.3 DDP"), []
    monkeypatch.setattr(module.time, "sleep", lambda seconds: said.append(seconds))
    destroy = module.dist.destroy_process_group
    monkeypatch.setattr(module.dist, "destroy_process_group", lambda: (said.append("destroy"), destroy()))
    for name in TORCHRUN_NAMES:
        monkeypatch.delenv(name, raising=False)
    torch.manual_seed(123)
    module.main(0, 1, 1, torch.device("cpu"))
    assert said == [0.5, "destroy"]


# ---- 用错的时候 ----


@pytest.mark.parametrize(
    ("name", "args", "says"),
    [
        ("练习 A.1、A.2", ["--fix"], "--fix"),
        ("练习 A.3", ["--num-inputs", "0"], "应在 1 到 100 万之间"),
        ("练习 A.3", ["--num-inputs", "三"], "--num-inputs"),
        ("练习 A.4", ["--device", "tpu"], "没有设备 tpu"),
    ],
)
def test_bad_input(command_line, tmp_path, monkeypatch, name, args, says):
    """退出码 2，没有 Traceback，最后一行说清楚，也不留文件。"""
    monkeypatch.chdir(tmp_path)
    code, out, err = command_line(name, *args)
    assert code == 2 and out == "" and says in err.splitlines()[-1]
    assert "Traceback" not in err and list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="这台机器有显卡，点名 cuda 是对的")
def test_missing_cuda(command_line):
    code, out, err = command_line("练习 A.4", "--device", "cuda")
    assert code == 2 and out == "" and "没有设备 cuda" in err.splitlines()[-1]


@pytest.mark.parametrize("name", [name for name in SCRIPTS if "练习" in name])
def test_help_is_chinese(command_line, name):
    code, out, err = command_line(name, "--help")
    assert code == 0 and err == "" and "练习 A." in out
    for option in re.findall(r"^  (--[\w-]+)", out, re.MULTILINE):
        assert re.search(rf"^  {option}[^-]*[\u4e00-\u9fff]", out, re.MULTILINE), option


# ---- 练习 ----


def test_environment_list_matches_requirements():
    """练习 A.2 里的清单与 requirements.txt 相同：有人改了一处，另一处也要改。"""
    wanted = {}
    for line in (APPENDIX.parent / "requirements.txt").read_text(encoding="utf-8").splitlines():
        match = re.match(r"([\w-]+)([=<>]=?[\d.]+)\s*(;.*)?$", line)
        if match and 'platform_machine == "x86_64"' not in (match[3] or ""):  # 跳过只给 Intel 芯片 Mac 的那两行
            wanted[match[1]] = match[2]
    assert {name: version for name, version, _ in load("练习 A.1、A.2").REQUIRED} == wanted


@pytest.mark.parametrize(
    ("found", "wanted", "state"),
    [("2.13.0+cpu", "==2.13.0", "可用"), ("2.9.1", "==2.13.0", "版本不同"), ("2.9", ">=2.13", "太旧"), ("3.10.0", ">=3.9", "可用"), ("1", ">=0.9", "可用")],
)
def test_version_comparison(monkeypatch, found, wanted, state):
    """比的是数，不是字符串：2.9 比 2.13 旧。"""
    monkeypatch.setattr(metadata, "version", lambda name: found)
    assert load("练习 A.1、A.2").check_package("some", wanted) == (state, found)


def test_environment_without_torch(command_line, monkeypatch):
    """没装 torch 也能跑完，指出缺什么。"""
    real, module = metadata.version, load("练习 A.1、A.2")

    def version(name):
        if name == "torch":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(module, "try_devices", lambda: pytest.fail("没装 torch 时不该导入它"))
    code, out, _ = command_line("练习 A.1、A.2")
    assert code == 0 and "没装" in out and "✗ 8 个包都能用　常见原因：缺 torch" in out


@pytest.mark.parametrize("sizes", [(50, 3), (1, 1), (784, 10)])
def test_parameter_count(command_line, reference, sizes):
    """换别的大小，手算的、数的与别人写的网络都相同。"""
    code, out, _ = command_line("练习 A.3", "--num-inputs", sizes[0], "--num-outputs", sizes[1])
    count = sum(p.numel() for p in reference.NeuralNetwork(*sizes).parameters())
    assert code == 0 and "✗" not in out and f"② 加起来：{count}\n" in out and f"③ PyTorch 数：{count}，" in out
