"""exp_reward_model：损失、取分的位置、从 n 个里挑、等级相关、真奖励都与另写的相同；弄坏了测试就变红；坏参数。

运行：python -m pytest ch07/tests/test_reward_model.py
不需要下载什么。
"""

import importlib.util
import itertools
import math
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "exp_reward_model.py"


def load(path=SCRIPT, name="exp_reward_model"):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ns():
    return load()


def read(ns, ids):
    """不看脚本怎样生成，只读文字：题、客气几句、解释几个词、答的数字、有几个真词元、真奖励。"""
    words = [ns.WORDS[i] for i in ids.tolist()]
    end = words.index("<结束>")
    assert set(words[end + 1 :]) <= {"<填充>"} and "<填充>" not in words[:end] and words[4] == "？"
    question, answer = words[:4], words[5:end]
    polite = [word for word in answer if word in ("您好", "请", "谢谢")]
    plain = [word for word in answer if word in ("因为", "所以", "先", "再", "比", "看")]
    assert polite + plain + answer[-1:] == answer and len(polite) <= 1 and len(set(question)) == 4 and answer[-1] in question
    right, n = answer[-1] == max(question), len(plain)
    reward = (2 if right else 0) + len(polite) + (0.4 * n if n <= 8 else 3.2 - (n - 8))
    return {"right": right, "polite": bool(polite), "words": n, "length": end + 1, "reward": reward}


# ---- 每条检查返回成立吗；弄坏代码之后，它必须不成立 ----


def answers_right(ns):
    """每个答案的真奖励，与只读文字算出来的相同；几种情况的比例与说的相符；指定了就照办。"""
    answers = ns.make_answers(300, 4, torch.Generator().manual_seed(1))
    for row in range(300):
        for column in range(4):
            for key, value in read(ns, answers["ids"][row, column]).items():
                if not math.isclose(answers[key][row, column].item(), value, abs_tol=1e-5):
                    return False
        if len({tuple(ids[:4].tolist()) for ids in answers["ids"][row]}) != 1:
            return False
    many = ns.make_answers(20_000, 1, torch.Generator().manual_seed(2))
    shares = [abs(many["right"].float().mean() - 0.35) < 0.02, abs(many["polite"].float().mean() - 0.3) < 0.02, abs(many["words"].float().mean() - 2) < 0.1]
    fixed = ns.make_answers(20, 2, torch.Generator().manual_seed(3), True, False, 11)
    return all(shares) and all(read(ns, ids) == {"right": True, "polite": False, "words": 11, "length": 18, "reward": pytest.approx(2.2)} for ids in fixed["ids"].flatten(0, 1))


def pairs_right(ns):
    """选中的真的更好的概率是 σ(差)，照它掷骰子；打乱了就与它无关。"""
    for shuffled in (False, True):
        good, bad, chance = ns.make_pairs(6000, torch.Generator().manual_seed(4), shuffled)
        gaps = torch.tensor([read(ns, a)["reward"] - read(ns, b)["reward"] for a, b in zip(good[0], bad[0])])
        if not torch.allclose(chance, 1 / (1 + torch.exp(-gaps)), atol=1e-5) or any(read(ns, ids)["length"] != length for ids, length in zip(good[0][:50], good[1])):
            return False
        # 照概率 p 掷，选中的那边平均是 p² + (1 − p)²；不照它，就是一半
        expected = 0.5 if shuffled else (chance**2 + (1 - chance) ** 2).mean()
        if abs(chance.mean() - expected) > 0.02:
            return False
    return True


def loss_right(ns):
    generator = torch.Generator().manual_seed(5)
    chosen, rejected = torch.randn(7, generator=generator).requires_grad_(), torch.randn(7, generator=generator).requires_grad_()
    ours = ns.compute_reward_loss(chosen, rejected)
    theirs = sum(-torch.log(torch.exp(c) / (torch.exp(c) + torch.exp(r))) for c, r in zip(chosen, rejected)) / 7
    slopes = [torch.cat(torch.autograd.grad(loss, (chosen, rejected), retain_graph=True)) for loss in (ours, theirs)]
    extreme = ns.compute_reward_loss(torch.tensor([-200.0]), torch.tensor([0.0]))  # 先 sigmoid 再 log，会得到 inf
    return torch.allclose(ours, theirs, atol=1e-6) and torch.allclose(*slopes, atol=1e-6) and extreme.item() == pytest.approx(200)


def last_token_right(ns):
    """成批的与一个一个、不填充的相同；改了填充，分数不变；改了最后一个真词元，分数就变。"""
    torch.manual_seed(6)
    answers = ns.make_answers(40, 1, torch.Generator().manual_seed(6))
    ids, lengths = answers["ids"][:, 0], answers["length"][:, 0]
    for model in (ns.RewardModel(), ns.CountingModel(True), ns.CountingModel(False)):
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.3)
        with torch.no_grad():
            together, alone = model(ids, lengths), torch.cat([model(row[None, :n], n[None]) for row, n in zip(ids, lengths)])
            sorted_ = ns.score_all(model, ids, lengths)
        if not (torch.allclose(together, alone, atol=1e-4) and torch.allclose(sorted_, alone, atol=1e-4)):
            return False
        changed = ids.clone()
        changed[torch.arange(40), lengths - 1] = 9
        with torch.no_grad():
            if torch.allclose(model(changed, lengths), together) != getattr(model, "only_length", False):
                return False
    return True


def best_of_n_right(ns):
    """与把每一种取法都挑一遍相同；取 1 个就是平均，全取就是最高的那个。"""
    scores, rewards = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(7))
    for n in range(1, 8):
        theirs = [statistics.mean(rewards[q, max(subset, key=lambda i: scores[q, i])].item() for subset in itertools.combinations(range(7), n)) for q in range(3)]
        if not torch.allclose(ns.best_of_n(scores, rewards, n).float(), torch.tensor(theirs), atol=1e-5):
            return False
    big = torch.randn(1, 1024, generator=torch.Generator().manual_seed(8))  # 阶乘很大也算得出
    return math.isclose(ns.best_of_n(big, torch.ones_like(big), 512).item(), 1, rel_tol=1e-6)


def kl_right(ns):
    """最高的那个在原来的分布里的位置 u，密度是 n·uⁿ⁻¹：数值积分。"""
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    densities = {n: n * u ** (n - 1) for n in (1, 2, 5, 64)}
    return all(abs((p * p.clamp(min=1e-300).log()).mean().item() - ns.kl_of_best_of_n(n)) < 1e-3 for n, p in densities.items())


def rank_right(ns):
    """有并列时也与先写出平均名次、再算相关系数的相同。"""
    generator = torch.Generator().manual_seed(9)
    a, b = torch.randint(0, 5, (6, 12), generator=generator).float(), torch.randn(6, 12, generator=generator)
    a[0] = 1.0
    ours = ns.rank_correlation(a, b)
    for row in range(6):
        ranks = []
        for values in (a[row].tolist(), b[row].tolist()):
            order = sorted(values)
            ranks.append([order.index(v) + (order.count(v) + 1) / 2 for v in values])
        expected = 0.0 if row == 0 else statistics.correlation(*ranks)
        if not math.isclose(ours[row].item(), expected, abs_tol=1e-9):
            return False
    return True


class Oracle(torch.nn.Module):
    """照文字算出真奖励的模型；gain 是放大几倍。"""

    def __init__(self, ns, gain=1.0):
        super().__init__()
        self.ns, self.gain, self.seen = ns, gain, {}

    def forward(self, ids, lengths):
        keys = [tuple(row) for row in ids.tolist()]
        return torch.tensor([self.gain * self.seen.setdefault(key, read(self.ns, row)["reward"]) for key, row in zip(keys, ids)])


def measured_right(ns):
    """真奖励自己去考：准确率就是上限，次序全对，等级相关 1，概率一点不差；反着打分，全都反过来。"""
    ns.TEST_PAIRS, ns.CANDIDATES, ns.SIZES = 400, 32, [1, 2, 8, 32]
    kept = ns.fit
    try:
        ns.fit = lambda *_: Oracle(ns)
        best = ns.train_once(ns.MODEL, 10, 3, 1, 4)
        ns.fit = lambda *_: Oracle(ns, -1.0)
        worst = ns.train_once(ns.MODEL, 10, 3, 1, 4)
        ns.fit = lambda *_: Oracle(ns, 2.0)
        sure = ns.train_once(ns.MODEL, 10, 3, 1, 4)
        ns.fit = lambda *_: Oracle(ns, 0.0)
        flat = ns.train_once(ns.MODEL, 10, 3, 1, 4)
    finally:
        ns.fit = kept
    near = lambda a, b: math.isclose(a, b, abs_tol=1e-5)  # noqa: E731
    right = near(best["accuracy"], best["bound"]) and math.isclose(best["rank"], 1, abs_tol=1e-3) and near(best["miss"], 0) and near(best["order"], 1) and near(worst["order"], 0)
    right &= near(worst["accuracy"], 1 - worst["bound"]) and math.isclose(worst["rank"], -1, abs_tol=1e-3) and worst["miss"] > 0.3
    right &= near(flat["accuracy"], 0.5) and near(flat["order"], 0.5) and near(flat["rank"], 0)
    right &= all(near(a, b) for a, b in best["bins"]) and all(a > b for a, b in sure["bins"] if a > 0.55) and all(0.5 <= a <= 1 for a, _ in sure["bins"])  # 放大两倍就是过于自信
    right &= all(near(a, b) for key in ("learned", "true") for x, y in zip(best[key], best["oracle"]) for a, b in zip(x, y))
    right &= worst["true"][0][-1] < best["true"][0][0] < best["true"][0][-1] and len(best["true"]) == 2
    truth = [3 + 0.4 * min(n, 8) - max(n - 8, 0) for n in range(25)]  # 都答对、都客气
    return bool(right and all(math.isclose(a, b, abs_tol=1e-4) for a, b in zip(best["sweep"], truth)))


def held_out_is_held_out(ns):
    """留出来决定用哪一步的标注，一次也没有用来练；用的是留出的损失最小的那一步。"""
    good, bad, chance = ns.make_pairs(100, torch.Generator().manual_seed(11))
    held = {tuple(row) for side in (good, bad) for row in side[0][:20].tolist()}
    trained, losses = set(), []

    class Spy(ns.CountingModel):
        def forward(self, ids, lengths):
            if torch.is_grad_enabled():
                trained.update(map(tuple, ids.tolist()))
            return super().forward(ids, lengths)

    kept, ns.LEARNING_RATE = (ns.CountingModel, ns.make_pairs), 0.1  # 学习率大得来回跳：最后一步不是最好的一步
    ns.CountingModel, ns.make_pairs = Spy, lambda *_: (good, bad, chance)
    try:
        model = ns.fit(ns.BAG, 100, 0, 200)
        for steps in (1, 41, 101, 200):
            again = ns.fit(ns.BAG, 100, 0, steps)
            losses.append(ns.compute_reward_loss(*(ns.score_all(again, ids[:20], n[:20]) for ids, n in (good, bad))).item())
    finally:
        ns.CountingModel, ns.make_pairs = kept
    final = ns.compute_reward_loss(*(ns.score_all(model, ids[:20], n[:20]) for ids, n in (good, bad))).item()
    shared = held & {tuple(row) for side in (good, bad) for row in side[0][20:].tolist()}
    return len(trained) > 100 and not (trained & held) - shared and losses == sorted(losses, reverse=True) and final == losses[-1] and losses[-1] < losses[0]


CHECKS = [answers_right, pairs_right, loss_right, last_token_right, best_of_n_right, kl_right, rank_right, measured_right, held_out_is_held_out]
BROKEN = [
    (answers_right, "- TOO_MUCH *", "+ TOO_MUCH *"),
    (answers_right, "words.clamp(max=ENOUGH)", "words"),
    (answers_right, "torch.where(correct, 0, torch.randint(1, 4,", "torch.where(correct, 0, torch.randint(0, 4,"),
    (answers_right, "last[:, :, 0] + 7", "last[:, :, 0] + 6"),
    (answers_right, "AVERAGE_WORDS / (AVERAGE_WORDS + 1)", "1 / (AVERAGE_WORDS + 1)"),
    (pairs_right, 'answers["reward"][:, 0] - answers["reward"][:, 1]', 'answers["reward"][:, 1] - answers["reward"][:, 0]'),
    (pairs_right, "(0.5 if shuffled else chance)", "0.5"),
    (pairs_right, "(0.5 if shuffled else chance)", "chance"),
    (pairs_right, "torch.where(first, chance, 1 - chance)", "chance"),
    (loss_right, "logsigmoid(chosen - rejected)", "logsigmoid(rejected - chosen)"),
    (loss_right, "-nn.functional.logsigmoid(chosen - rejected).mean()", "-nn.functional.logsigmoid(chosen - rejected).sum()"),
    (loss_right, "-nn.functional.logsigmoid(chosen - rejected).mean()", "-torch.sigmoid(chosen - rejected).log().mean()"),
    (loss_right, "-nn.functional.logsigmoid(chosen - rejected).mean()", "(rejected - chosen).mean()"),
    (last_token_right, "(lengths - 1)[:, None]", "torch.full_like(lengths[:, None], -1) % int(lengths.max())"),
    (last_token_right, "(lengths - 1)[:, None]", "(lengths - 2)[:, None]"),
    (last_token_right, "self.gpt(ids[:, : int(lengths.max())])[:, :, 0]", "self.gpt(ids[:, : int(lengths.max())])[:, :, 0].cumsum(dim=1).flip(1)"),
    (last_token_right, "one_hot(ids, len(WORDS))[:, :, 1:].sum(dim=1)", "one_hot(ids, len(WORDS))[:, :, :-1].sum(dim=1)"),
    (last_token_right, "scores[rows] = model(ids[rows], lengths[rows])", "scores[: len(rows)] = model(ids[rows], lengths[rows])"),
    (best_of_n_right, "rewards.gather(1, order).double()", "rewards.double()"),
    (best_of_n_right, "scores.argsort(dim=1)", "scores.argsort(dim=1, descending=True)"),
    (best_of_n_right, ".exp() * n / m", ".exp() / m"),
    (best_of_n_right, " * (rank >= n)", ""),
    (best_of_n_right, "torch.lgamma((rank - n).clamp(min=0) + 1)", "torch.lgamma((rank - n).clamp(min=0) + 2)"),
    (kl_right, "math.log(n) - (n - 1) / n", "math.log(n)"),
    (kl_right, "math.log(n) - (n - 1) / n", "math.log(n) - 1"),
    (rank_right, "torch.sign(x[:, :, None] - x[:, None])", "(x[:, :, None] - x[:, None])"),
    (rank_right, "torch.sign(x[:, :, None] - x[:, None])", "(x[:, :, None] > x[:, None])"),
    (measured_right, "side * chance + (1 - side) * (1 - chance)", "side"),
    (measured_right, "(gap > 0).float() + (gap == 0).float() / 2", "(gap >= 0).float()"),
    (measured_right, "torch.where(claimed >= 0.5, chance, 1 - chance)", "chance"),
    (measured_right, "(picked[:, ::2], picked[:, 1::2])", "(picked, )"),
    (held_out_is_held_out, "torch.randint(held, pairs,", "torch.randint(0, pairs,"),
    (held_out_is_held_out, "model.load_state_dict(best[1])", "pass"),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_right(check):
    assert check(load())


@pytest.mark.parametrize("check, old, new", BROKEN, ids=lambda value: value.__name__ if callable(value) else "")
def test_broken_is_seen(check, old, new, tmp_path):
    """把那一处改坏，检查就不成立（或出错）：检查不是摆设。"""
    document, start, code = SCRIPT.read_text(encoding="utf-8").partition("\nimport argparse\n")
    assert code.count(old) == 1, old
    path = tmp_path / "exp_reward_model.py"
    path.write_text(document + start + code.replace(old, new), encoding="utf-8")
    try:
        assert not check(load(path, "broken"))
    except (RuntimeError, IndexError, ValueError):
        pass


# ---- 零碎 ----


def test_it_learns_length_first(ns):
    """几步之后，只看长度的模型给长的打分高；打乱标签的考不过瞎猜多少。"""
    model = ns.fit(ns.LENGTH, 500, 0, 61)
    assert model.head.weight.item() > 0.05
    result = ns.train_once(ns.LENGTH, 500, 0, 61, 2)
    assert 0.6 < result["accuracy"] < result["bound"] < 0.8
    assert result["learned"][0] == sorted(result["learned"][0]), "挑得越狠，学到的分数越高"


def test_seed_decides(ns):
    """同一个种子，结果相同；考的题只由种子定，与模型无关。"""
    first, again, other = (ns.train_once(kind, 100, 3, 2, 2) for kind in (ns.BAG, ns.BAG, ns.LENGTH))
    assert first == again and first["bound"] == other["bound"] and first["oracle"] == other["oracle"]


def run(*arguments, script=SCRIPT):
    return subprocess.run([sys.executable, str(script), *arguments], capture_output=True, encoding="utf-8", env=os.environ | {"PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"})


def test_quick(tmp_path):
    script = tmp_path / "ch07" / "experiments" / "exp_reward_model.py"
    script.parent.mkdir(parents=True)
    shutil.copy(SCRIPT, script)
    result = run("--quick", script=script)
    assert result.returncode == 0 and "看流程，不下结论" in result.stdout and "✗" not in result.stdout and "过度优化了吗" not in result.stdout, result.stdout + result.stderr
    assert (tmp_path / "ch07" / "outputs" / "reward_model_quick.png").is_file()


@pytest.mark.parametrize("arguments", [["--seeds", "0"], ["--seeds", "4"], ["--seeds", "11"]], ids=" ".join)
def test_bad_arguments(ns, arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["exp_reward_model.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        ns.main()
    assert stopped.value.code == 2 and "应在" in capsys.readouterr().err.splitlines()[-1]
