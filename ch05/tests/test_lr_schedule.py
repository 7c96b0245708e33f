"""exp_lr_schedule：学习率、裁剪、训练循环与 PyTorch、transformers 自带的相同；弄坏了测试就变红；预热太长被拒绝；--quick、坏参数。

运行：python -m pytest ch05/tests/test_lr_schedule.py
"""

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "exp_lr_schedule.py"
CPU = torch.device("cpu")


def load(path=SCRIPT, name="exp_lr_schedule"):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ns():
    return load()


def little_model(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Embedding(7, 5), torch.nn.Linear(5, 7))


def little_batches(steps=12):
    generator = torch.Generator().manual_seed(3)
    windows = [torch.randint(0, 7, (4, 6), generator=generator) for _ in range(steps)]
    return [(window[:, :-1], window[:, 1:]) for window in windows]


# ---- 每条检查返回成立吗；弄坏代码之后，它必须不成立 ----


def rate_is_torch(ns):
    """LinearLR 接 CosineAnnealingLR，一步一步地走。"""
    for total, warmup, peak, low in [(135, 27, 0.001, 1e-5), (20, 1, 0.3, 0.0), (9, 8, 1.0, 0.5)]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
        up = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.05, end_factor=1.0, total_iters=warmup)
        down = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total - warmup, eta_min=low)
        scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [up, down], milestones=[warmup])
        for step in range(total):
            if not math.isclose(ns.learning_rate(step, total, warmup, peak, 0.05 * peak, low), optimizer.param_groups[0]["lr"], rel_tol=1e-9, abs_tol=1e-12):
                return False
            optimizer.step()
            scheduler.step()
    return True


def rate_is_transformers(ns):
    """get_cosine_schedule_with_warmup：从 0 升到峰值，再降到 0；不预热的也对。"""
    schedule = pytest.importorskip("transformers").get_cosine_schedule_with_warmup
    for total, warmup in [(30, 6), (30, 0)]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.7)
        scheduler = schedule(optimizer, warmup, total)
        for step in range(total):
            if not math.isclose(ns.learning_rate(step, total, warmup, 0.7, 0.0, 0.0), optimizer.param_groups[0]["lr"], rel_tol=1e-9, abs_tol=1e-12):
                return False
            optimizer.step()
            scheduler.step()
    return True


def too_long_is_refused(ns):
    for total, warmup in [(20, 20), (20, 21), (20, -1)]:
        try:
            ns.learning_rate(0, total, warmup, 1.0, 0.0, 0.0)
            return False
        except ValueError as error:
            if f"预热 {warmup} 步，整个训练才 {total} 步" not in str(error):
                return False
    return ns.learning_rate(19, 20, 19, 1.0, 0.0, 0.0) == 1.0


def clip_is_torch(ns):
    for size in (5.0, 1e-3):
        models = [little_model(), little_model()]
        models[0][0].weight.requires_grad_(False)  # 没有梯度的参数：跳过
        models[1][0].weight.requires_grad_(False)
        for model in models:
            (size * model(torch.arange(6)).pow(2).sum()).backward()
        norms = ns.clip_gradients(models[0], 0.5), torch.nn.utils.clip_grad_norm_(models[1].parameters(), 0.5).item()
        pairs = [(a.grad, b.grad) for a, b in zip(models[0].parameters(), models[1].parameters()) if b.grad is not None]
        if not math.isclose(*norms, rel_tol=1e-5) or not all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in pairs):
            return False
    return True


def highest_is_the_books(ns):
    """带符号的最大：负得再多也不算，与书上相同。"""
    model = little_model()
    model[0].weight.grad, model[1].weight.grad = torch.full((7, 5), -9.0), torch.linspace(-3, 2, 35).view(7, 5)
    return ns.find_highest_gradient(model) == 2.0


def loop_is_torch(ns):
    """与另写的一个循环（现成的优化器、裁剪）走完 12 步，权重相同；记下的也相同。"""
    lrs, batches = [ns.learning_rate(step, 12, 3, 0.05, 0.001, 0.002) for step in range(12)], little_batches()
    ours, theirs = little_model(), little_model()
    log = ns.train_model(ours, batches, lrs, 0.05, lambda: 0.0, 4, clip_from=3)
    optimizer, losses, norms = torch.optim.AdamW(theirs.parameters(), lr=1.0, weight_decay=0.1), [], []
    for step, (inputs, targets) in enumerate(batches):
        optimizer.param_groups[0]["lr"] = lrs[step]
        loss = torch.nn.functional.cross_entropy(theirs(inputs).transpose(1, 2), targets)
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.05 if step >= 3 else 1e9).item())
        optimizer.step()
        losses.append(loss.item())
    same = all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours.parameters(), theirs.parameters()))
    logged = log["lr"] == lrs and all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(log["loss"] + log["norm"], losses + norms))
    return same and logged and [step for step, _ in log["curve"]] == [0, 4, 8, 11] and max(norms) > 0.05


def recipes_right(ns):
    rates = {name: ns.rates_of(name, 0.01, 50, 10) for name in ns.RECIPES}
    falls = [rates[name][-1] < 0.001 for name in ("三样全加", "去掉预热", "去掉裁剪")]
    starts = [math.isclose(rates[name][0], 0.0001) for name in ("三样全加", "去掉余弦", "去掉裁剪")]
    return all(falls + starts) and set(rates["固定的学习率"]) == {0.01} and rates["去掉余弦"][10:] == [0.01] * 40 and rates["去掉预热"][0] == 0.01


CHECKS = [rate_is_torch, rate_is_transformers, too_long_is_refused, clip_is_torch, highest_is_the_books, loop_is_torch, recipes_right]
BROKEN = [
    (rate_is_torch, "0.5 * (1 + math.cos(", "(1 + math.cos("),
    (rate_is_torch, "math.cos(math.pi * progress)", "math.cos(2 * math.pi * progress)"),
    (rate_is_torch, "(step - warmup_steps) / (total_steps - warmup_steps)", "step / total_steps"),
    (rate_is_torch, "(step - warmup_steps) / (total_steps - warmup_steps)", "(step - warmup_steps) / total_steps"),
    (rate_is_torch, "initial_lr + step * (peak_lr - initial_lr) / warmup_steps", "step * peak_lr / warmup_steps"),
    (rate_is_torch, "initial_lr + step * (peak_lr - initial_lr) / warmup_steps", "initial_lr + (step + 1) * (peak_lr - initial_lr) / warmup_steps"),
    (rate_is_torch, "min_lr + (peak_lr - min_lr) * 0.5", "peak_lr * 0.5"),
    (rate_is_transformers, "if step < warmup_steps:", "if step <= warmup_steps:"),
    (too_long_is_refused, "if not 0 <= warmup_steps < total_steps:", "if not 0 <= warmup_steps <= total_steps:"),
    (too_long_is_refused, "if not 0 <= warmup_steps < total_steps:", "if warmup_steps >= total_steps:"),
    (clip_is_torch, "min(1.0, max_norm / (norm + 1e-6))", "max_norm / (norm + 1e-6)"),
    (clip_is_torch, "torch.stack([grad.norm() for grad in grads]).norm()", "torch.stack([grad.norm() for grad in grads]).sum()"),
    (clip_is_torch, "torch.stack([grad.norm() for grad in grads]).norm()", "torch.stack([grad.abs().max() for grad in grads]).max()"),
    (highest_is_the_books, "p.grad.max().item()", "p.grad.abs().max().item()"),
    (loop_is_torch, "step >= clip_from", "step > clip_from"),
    (loop_is_torch, "        optimizer.zero_grad()", "        pass"),
    (loop_is_torch, 'group["lr"] = lrs[step]', 'group["lr"] = lrs[0]'),
    (recipes_right, "peak / 100 if cosine else peak", "peak / 100"),
    (recipes_right, "warmup * warm,", "warmup,"),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_right(ns, check):
    assert check(ns)


@pytest.mark.parametrize("check, old, new", BROKEN, ids=lambda value: value.__name__ if callable(value) else "")
def test_broken_is_seen(check, old, new, tmp_path):
    """把那一处改坏，检查就不成立（或出错）：检查不是摆设。"""
    document, start, code = SCRIPT.read_text(encoding="utf-8").partition("\nimport argparse\n")  # 文档的「动手改」里也写着这些
    assert code.count(old) == 1, old
    path = tmp_path / "ch05" / "experiments" / "broken.py"
    path.parent.mkdir(parents=True)
    (tmp_path / "setup").symlink_to(SCRIPT.parents[2] / "setup")
    path.write_text(document + start + code.replace(old, new), encoding="utf-8")
    try:
        assert not check(load(path, "broken"))
    except (RuntimeError, IndexError, ZeroDivisionError):
        pass


# ---- 零碎 ----


def test_same_seed_is_paired(ns):
    """同一个种子：几种做法的第一批、初始权重相同，再来一次逐位相同。"""
    path = str(SCRIPT.parents[2] / "setup" / "data" / "story-en.txt")
    logs = [ns.train_once(path, name, 0.01, 3, 1, 7) for name in ("三样全加", "固定的学习率", "三样全加")]
    assert logs[0] == logs[2] and logs[0]["loss"][0] == logs[1]["loss"][0] and logs[0]["loss"][2] != logs[1]["loss"][2]


def run(*arguments, script=SCRIPT, **env):
    return subprocess.run([sys.executable, str(script), *map(str, arguments)], capture_output=True, encoding="utf-8", env=os.environ | {"PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"} | env)


def test_quick(tmp_path):
    """--quick 走完，自查全过，不下结论；图片另存，不盖掉默认的。"""
    script = tmp_path / "ch05" / "experiments" / SCRIPT.name
    script.parent.mkdir(parents=True)
    script.write_text(SCRIPT.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "setup").symlink_to(SCRIPT.parents[2] / "setup")
    result = run("--quick", script=script)
    assert result.returncode == 0 and "看流程，不下结论" in result.stdout and result.stdout.count("✓") == 5 and "✗" not in result.stdout, result.stdout + result.stderr
    assert not any(word in result.stdout for word in ("更低", "更高", "分不出")) and "0.000366667" in result.stdout
    assert [path.name for path in (tmp_path / "ch05" / "outputs").glob("*.png")] == ["lr_schedule_quick.png"]


@pytest.mark.parametrize(
    "arguments, says",
    [(["--quick", "--warmup", "100"], "预热 100 步，整个训练才 8 步"), (["--warmup", "300"], "预热 300 步"), (["--steps", "3"], "--steps 应在"), (["--seeds", "4"], "--seeds 应在"), (["--seed", "-1"], "--seed 应在"), (["--text", "没有这个文件.txt"], "读不了")],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_arguments(ns, arguments, says, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["exp_lr_schedule.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        ns.main()
    assert stopped.value.code == 2 and says in capsys.readouterr().err.splitlines()[-1]


def test_book_needs_the_book(tmp_path, ns, monkeypatch, capsys):
    """没有 the-verdict.txt 时，--book 一句话拒绝。"""
    monkeypatch.delenv("LLM_DATA_DIR", raising=False)
    if ns.find_data("the-verdict.txt", "story-en.txt").name == "the-verdict.txt":
        pytest.skip("setup/downloads 里有原书的文本")
    monkeypatch.setattr(sys, "argv", ["exp_lr_schedule.py", "--book"])
    with pytest.raises(SystemExit) as stopped:
        ns.main()
    assert stopped.value.code == 2 and "the-verdict.txt" in capsys.readouterr().err.splitlines()[-1]
