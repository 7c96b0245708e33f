"""exp_token_confidence：关键的词找得准、概率与从头算的相同，一对一错与秩和的公式相同；终端的颜色只给终端。

运行：python -m pytest ch05/tests/test_token_confidence.py
"""

import importlib.util
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "ch05" / "experiments" / "exp_token_confidence.py"
TINY = {"vocab_size": 50257, "context_length": 64, "emb_dim": 32, "n_heads": 2, "n_layers": 2, "drop_rate": 0.0, "qkv_bias": True}


@pytest.fixture(scope="module")
def ns():
    spec = importlib.util.spec_from_file_location("exp_token_confidence", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference():
    """书的作者的 GPT，随机的权重放大了几倍：不放大，各个词元的概率几乎一样大。"""
    from llms_from_scratch.ch04 import GPTModel

    torch.manual_seed(123)
    model = GPTModel(TINY).eval()
    with torch.no_grad():
        model.out_head.weight *= 8
    return model


@pytest.fixture(scope="module")
def tiny(reference, tmp_path_factory):
    path = tmp_path_factory.mktemp("confidence") / "tiny.pth"
    torch.save({"config": TINY, "model": reference.state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def talker(ns, tiny):
    return ns.load(tiny)


def run(tiny, *arguments, **options):
    """在别的文件夹里运行一份副本：图片写在那里，不盖掉 ch05/outputs/ 里真的那张。"""
    copy = tiny.parent / "ch05" / "experiments" / SCRIPT.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_text(SCRIPT.read_text(encoding="utf-8"), encoding="utf-8")
    env = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | {"PYTHONUTF8": "1", "LLM_DATA_DIR": str(ROOT / "setup" / "downloads")}
    env |= options.pop("env", {})
    return subprocess.run([sys.executable, copy, "--model", tiny, *arguments], env=env, **({"capture_output": True, "encoding": "utf-8"} | options))


@pytest.mark.parametrize("written,word,count", [(' "Canberra" is', "Canberra", 2), (" Paris.", "Paris", 1), ("\n\n68 and", "68", 1), (" Ulaanbaatar\n", "Ulaanbaatar", 5), (" !?", "", 0)])
def test_first_word(ns, talker, written, word, count):
    """词要写完才算：前后的引号、空格不算，几个词元拼成的，概率乘起来；一个词也没有写，是空的。"""
    tokens, start = talker.tokenizer.encode(written), len(ns.encode(talker, [{"role": "user", "content": "Q"}], 1)[0]) + len(talker.tokenizer.encode("\nA"))

    class Parrot:
        cfg = talker.model.cfg

        def __call__(self, part, cache, last_only):
            cache.length += part.shape[1]
            at = cache.length - start
            return torch.nn.functional.one_hot(torch.tensor([[tokens[at] if at < len(tokens) else talker.eos_id]]), TINY["vocab_size"]) * 12.0

    parrot = SimpleNamespace(**vars(talker) | {"model": Parrot()})
    got, p = ns.first_word(parrot, SimpleNamespace(ids=[], cache=ns.State(talker).cache, stop=False), "Q", "A")
    one = torch.tensor(12.0).exp() / (torch.tensor(12.0).exp() + TINY["vocab_size"] - 1)
    assert got == word and p == pytest.approx(one.item() ** count if word else 0, rel=1e-3)


def test_first_word_like_reference(ns, reference, talker):
    """十道题共用一份缓存，词和概率都与书的作者的 GPT 每一步从头贪心的相同。"""
    state, found = ns.State(talker), 0
    for thing in list(ns.CAPITALS)[:10]:
        question, opening, _ = ns.QUESTIONS["首都"]
        word, p = ns.first_word(talker, state, question.format(thing), opening.format(thing))
        ids = talker.tokenizer.encode(question.format(thing) + "\n" + opening.format(thing))
        start, probs = len(ids), []
        for _ in range(12):
            with torch.no_grad():
                probs.append(reference(torch.tensor([ids]))[0, -1].softmax(dim=-1).max().item())
                ids.append(reference(torch.tensor([ids]))[0, -1].argmax().item())
        pieces = [talker.tokenizer.decode([i]) for i in ids[start:]]
        if "�" in "".join(pieces):
            continue  # 半个字的，上面那个测试管
        match, ends = re.search(r"\w+", "".join(pieces)), [len("".join(pieces[: i + 1])) for i in range(12)]
        assert match and word == match[0]
        want = [q for q, piece, end in zip(probs, pieces, ends) if end > match.start() and end - len(piece) < match.end()]
        assert p == pytest.approx(torch.tensor(want).prod().item(), rel=1e-3)
        found += 1
    assert found > 0


def test_concordance_like_rank_sum(ns):
    """与曼–惠特尼的秩和公式相同，有打平的也一样；几类合在一起，只在各自的类里比。"""
    draw = random.Random(1)
    rows = [(kind, "", "", draw.randrange(5) / 5, draw.random() < 0.5) for kind in ns.QUESTIONS for _ in range(15)]
    total, count = 0.0, 0
    for kind in ns.QUESTIONS:
        mine = [row for row in rows if row[0] == kind]
        ps = torch.tensor([row[3] for row in mine])
        right = torch.tensor([row[4] for row in mine])
        ranks = (ps[None] < ps[:, None]).sum(1) + ((ps[None] == ps[:, None]).sum(1) + 1) / 2  # 打平的取平均的名次
        wins, size = ranks[right].sum() - right.sum() * (right.sum() + 1) / 2, right.sum() * (~right).sum()
        assert ns.concordance(mine) == pytest.approx((wins / size).item())
        total, count = total + wins.item(), count + size.item()
    assert ns.concordance(rows) == pytest.approx(total / count)
    assert ns.concordance([row for row in rows if row[4]]) != ns.concordance(rows)  # 全对，没有可比的：nan


def test_report_follows_the_numbers(ns, capsys):
    """结论由数算出来：分得开的说分得出一些，毫无关系的说分不出，没有可比的、--quick 不下结论。"""
    apart = [(kind, "x", "y", 0.9 - 0.04 * i, i < 10) for kind in ns.QUESTIONS for i in range(20)]
    mixed = [(kind, "x", "y", 0.9 - 0.04 * i, i % 2 == 0) for kind in ns.QUESTIONS for i in range(20)]
    for rows, quick, want, absent in [(apart, False, "分得出一些", "分不出"), (mixed, False, "这么几道题，分不出", "分得出一些"), (apart, True, "不下结论", "打乱对错"),
                                      ([row for row in apart if row[4]], False, "比不了", "打乱对错")]:  # fmt: skip
        ns.report(rows, quick)
        out = capsys.readouterr().out
        assert want in out and absent not in out, out


def test_paint(ns):
    """底色照概率；控制字符到不了终端，换行和中文原样。"""
    assert [ns.paint("a", p, True) for p in (0.95, 0.7, 0.1, 0.0)] == ["a", "\033[30;43ma\033[0m", "\033[97;41ma\033[0m", "\033[97;41ma\033[0m"]
    assert ns.paint("\033]0;x\007\x9b你　好\n\t", 0.1, False) == "�]0;x��你　好\n\t"


def test_color_only_for_terminals(tiny):
    """印到终端才有颜色，设了 NO_COLOR 的终端、管道都没有；字是同样的字。"""
    pty = pytest.importorskip("pty")

    def terminal(**env):
        here, there = pty.openpty()
        result = run(tiny, "--ask", "Every effort moves", capture_output=False, encoding=None, stdout=there, stderr=subprocess.DEVNULL, env=env)
        os.close(there)
        chunks = []
        while True:
            try:
                chunk = os.read(here, 65536)
            except OSError:  # Linux 读完了报 EIO
                break
            if not chunk:
                break
            chunks.append(chunk)
        os.close(here)
        assert result.returncode == 0
        return b"".join(chunks).decode("utf-8").replace("\r\n", "\n")

    piped = run(tiny, "--ask", "Every effort moves")
    assert piped.returncode == 0 and "\033" not in piped.stdout and piped.stdout.count("选了") == 5 == piped.stdout.count("没选")
    colored = terminal()
    assert "\033[97;41m" in colored and re.sub(r"\033\[[0-9;]*m", "", colored) == piped.stdout == terminal(NO_COLOR="1")


def test_command_line(tiny):
    """--quick 走到底，自查全对，不下结论；给错的，一句中文，退出码 2。"""
    result = run(tiny, "--quick")
    checks = result.stdout.split("这个数字对吗？")[1]
    assert result.returncode == 0 and checks.count("✓") == 5 and "✗" not in checks and "不下结论" in result.stdout and "打乱对错" not in result.stdout
    assert (tiny.parent / "ch05" / "outputs" / "token_confidence.png").stat().st_size > 10_000
    for arguments, sentence in [(["--ask", " "], "--ask 后面要有问题"), (["--model", "没有.pth"], "没有这个文件")]:
        result = run(tiny, *arguments)
        assert result.returncode == 2 and "Traceback" not in result.stderr and sentence in result.stderr.splitlines()[-1]


def test_smollm2(ns):
    """真的模型：法国的首都答得对，很有把握；答错的也有。"""
    if not ns.SMOLLM2.is_file():
        pytest.skip("没有转换好的 SmolLM2：python ch05/experiments/exp_real_llm.py --convert")
    talker = ns.load(ns.SMOLLM2)
    state = ns.State(talker)
    ask = lambda kind, thing: ns.first_word(talker, state, *(text.format(thing) for text in ns.QUESTIONS[kind][:2]))  # noqa: E731
    word, p = ask("首都", "France")
    assert word == "Paris" and p > 0.8
    word, p = ask("加法", "23 + 45")
    assert word.isdigit() and word != "68" and p < 0.5
