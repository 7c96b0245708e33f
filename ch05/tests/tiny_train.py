"""给测试用：把 mini 换成极小的配置，再像在命令行里那样运行 gpt_train.py，参数原样传过去。

分词换成"一个字节一个词元"，词表从 50257 缩到 256，一步不到 10 毫秒；训练、存取、续训的代码一行不改。
"""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

MAIN = Path(__file__).resolve().parent.parent / "main"
TINY = {"vocab_size": 256, "context_length": 16, "emb_dim": 16, "n_heads": 2, "n_layers": 2, "drop_rate": 0.1, "qkv_bias": False}
BYTES = SimpleNamespace(encode=lambda text, **_: list(text.encode()), decode=lambda ids: bytes(ids).decode(errors="replace"))


def load(name):
    """按路径导入一个脚本。"""
    spec = importlib.util.spec_from_file_location(Path(name).stem, MAIN / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny_gpt_train():
    """gpt_train.py，但 mini 是极小的配置，训练 3 轮。"""
    module = load("gpt_train.py")
    module.MODEL_CONFIGS["mini"] = dict(TINY)
    module.TRAIN_SETTINGS["mini"] |= {"learning_rate": 1e-2, "num_epochs": 3, "eval_freq": 5}
    module.load_gpt2_tokenizer = lambda: BYTES
    return module


if __name__ == "__main__":
    tiny_gpt_train().main()
