"""exp_rope_layouts：两种摆法各与独立的实现相同，换行之后分数相同；装错的，自查认得出。"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "exp_rope_layouts.py"


@pytest.fixture(scope="module")
def rope():
    spec = importlib.util.spec_from_file_location("exp_rope_layouts", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("base", [10_000, 500_000])
def test_half_split_is_that_of_transformers(rope, base):
    from transformers.models.llama.modeling_llama import LlamaConfig, LlamaRotaryEmbedding, apply_rotary_pos_emb

    config = LlamaConfig(hidden_size=64, num_attention_heads=4, rope_parameters={"rope_type": "default", "rope_theta": base})
    queries, keys = torch.randn(2, 4, 30, 16), torch.randn(2, 2, 30, 16)
    theirs = apply_rotary_pos_emb(queries, keys, *LlamaRotaryEmbedding(config)(queries, torch.arange(30)[None]))
    tables = rope.compute_rope_params(16, base, 30)
    for ours, expected in zip([rope.apply_rope(queries, *tables), rope.apply_rope(keys, *tables)], theirs):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_stretched_angles_are_those_of_transformers(rope):
    """Llama 3.1 拉长上下文的办法。"""
    from transformers.models.llama.modeling_llama import LlamaConfig, LlamaRotaryEmbedding

    stretch = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    config = LlamaConfig(hidden_size=128, num_attention_heads=2, max_position_embeddings=512, rope_parameters={"rope_type": "llama3", "rope_theta": 500_000.0, **stretch})
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(300)[None])
    ours = rope.compute_rope_params(64, 500_000, 300, stretch | {"original_context_length": 64})
    torch.testing.assert_close(ours[0], cos[0], atol=2e-4, rtol=0)
    torch.testing.assert_close(ours[1], sin[0], atol=2e-4, rtol=0)
    plain = rope.compute_rope_params(64, 500_000, 300)
    assert (plain[0] - cos[0]).abs().max() > 0.1  # 没有拉长的就不同：上面两行真的在比


@pytest.mark.parametrize(("heads", "bias"), [(4, False), (1, False), (2, True)])
def test_permuted_rows_give_the_same_scores(rope, heads, bias):
    """换行加换转法，分数不变；只换一样，距离 0 以外都变。偏置也换得了。"""
    x, weight = torch.randn(1, 9, 32), torch.randn(heads * 16, 32)
    offset = torch.randn(heads * 16) if bias else torch.zeros(heads * 16)
    tables = rope.compute_rope_params(16, context_length=9)

    def scores(rotate, rows):
        vectors = torch.nn.functional.linear(x, rows(weight, heads), rows(offset, heads)).view(1, 9, heads, 16).transpose(1, 2)
        turned = rotate(vectors, *tables)
        return turned @ turned.transpose(2, 3)

    same = scores(rope.apply_rope, lambda w, h: w)
    torch.testing.assert_close(scores(rope.apply_rope_interleaved, rope.to_interleaved), same, atol=1e-3, rtol=1e-4)
    wrong = (scores(rope.apply_rope_interleaved, lambda w, h: w) - same).abs()
    assert wrong.diagonal(dim1=2, dim2=3).max() < 1e-2 and wrong.max() > 1
    assert torch.equal(rope.to_half_split(rope.to_interleaved(weight, heads), heads), weight)


def test_half_precision_and_odd_sizes(rope):
    tables = rope.compute_rope_params(8, context_length=50)
    x = torch.randn(1, 1, 50, 8)
    for rotate in (rope.apply_rope, rope.apply_rope_interleaved):
        assert rotate(x.bfloat16(), *tables).dtype == torch.bfloat16
        assert (rotate(x.bfloat16(), *tables).float() - rotate(x, *tables)).abs().max() < 0.1
    with pytest.raises(ValueError, match="head_dim=7 是奇数"):
        rope.compute_rope_params(7)


def run(*args, cwd, edit=None, tmp_path=None):
    script = SCRIPT
    if edit:
        folder = tmp_path / "ch05" / "experiments"
        folder.mkdir(parents=True)
        (tmp_path / "setup").mkdir()
        (tmp_path / "setup" / "data").symlink_to(SCRIPT.parents[2] / "setup" / "data")
        source = SCRIPT.read_text(encoding="utf-8")
        assert source.count(edit[0]) == 1
        script = folder / SCRIPT.name
        script.write_text(source.replace(*edit), encoding="utf-8")
    return subprocess.run([sys.executable, str(script), *map(str, args)], cwd=cwd, capture_output=True, text=True, encoding="utf-8", timeout=200, env=os.environ | {"PYTHONUTF8": "1"})


def test_quick_run(tmp_path):
    result = run("--quick", cwd=tmp_path)
    assert result.returncode == 0 and "✗" not in result.stdout and result.stdout.count("✓") >= 8, result.stdout + result.stderr
    assert "看流程，不下结论" in result.stdout and "所以" not in result.stdout
    assert (SCRIPT.parents[1] / "outputs" / "rope_layouts.png").is_file() and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("edit", "crosses"),
    [
        (('BOTH = ["W_query", "W_key"]', 'BOTH = ["W_query", "W_key", "W_value"]'), ["换过行：损失的差"]),
        (("weight.reshape(num_heads, 2, rows // 2, -1)", "weight.reshape(num_heads, rows // 2, 2, -1)"), ["换过去再换回来", "换过行：第一层的分数", "换过行：损失的差"]),
    ],
)
def test_mistakes_are_caught(tmp_path, edit, crosses):
    """动手改 2、3：没有一处报错，自查认得出。"""
    result = run("--quick", cwd=tmp_path, edit=edit, tmp_path=tmp_path)
    failed = re.findall(r"^  ✗ (.*)$", result.stdout, re.MULTILINE)
    assert result.returncode == 0 and len(failed) == len(crosses) and all(line.startswith(start) for line, start in zip(failed, crosses)), result.stdout + result.stderr


@pytest.mark.parametrize(("args", "says"), [(["--steps", 0], "--steps 至少是 1"), (["--seed", -1], "--seed")])
def test_bad_arguments(tmp_path, args, says):
    result = run(*args, cwd=tmp_path)
    assert result.returncode == 2 and says in result.stderr.splitlines()[-1] and "Traceback" not in result.stderr
