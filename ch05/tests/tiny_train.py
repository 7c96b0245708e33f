"""给测试用：把 mini 换成极小的配置（一步几毫秒），再像在命令行里那样运行 gpt_train.py，参数原样传过去。"""

import importlib.util
from pathlib import Path

MAIN = Path(__file__).resolve().parent.parent / "main"
TINY = {"vocab_size": 50257, "context_length": 16, "emb_dim": 8, "n_heads": 2, "n_layers": 1, "drop_rate": 0.1, "qkv_bias": False}


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
    module.TRAIN_SETTINGS["mini"] = {"learning_rate": 1e-2, "num_epochs": 3}
    return module


if __name__ == "__main__":
    tiny_gpt_train().main()
