"""给测试用：把配置换成极小的，再像在命令行里那样运行 gpt_train.py 或 exp_resume.py。

分词换成"一个字节一个词元"，词表从 50257 缩到 256，一步不到 10 毫秒；训练、存取、续训的代码一行不改。

用法：python tiny_train.py main/gpt_train.py 输出文件夹 参数…
"""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

CHAPTER = Path(__file__).resolve().parent.parent
TINY = {"vocab_size": 256, "context_length": 16, "emb_dim": 16, "n_heads": 2, "n_layers": 2, "drop_rate": 0.1, "qkv_bias": False}
BYTES = SimpleNamespace(encode=lambda text, **_: list(text.encode()), decode=lambda ids: bytes(ids).decode(errors="replace"))


def load(name):
    """按路径导入 ch05 里的一个脚本，如 "main/gpt_train.py"。"""
    spec = importlib.util.spec_from_file_location(Path(name).stem, CHAPTER / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny(name, outputs=None):
    """脚本，但每种规模都是极小的配置，训练 3 轮；文件写到 outputs。"""
    module = load(name)
    module.MODEL_CONFIGS = {size: dict(TINY) for size in module.MODEL_CONFIGS}
    module.TRAIN_SETTINGS = {size: {"learning_rate": 1e-2, "num_epochs": 3, "eval_freq": 5, "eval_iter": 5} for size in module.TRAIN_SETTINGS}
    module.tiktoken = SimpleNamespace(get_encoding=lambda name: BYTES)
    if outputs:
        module.OUTPUTS = Path(outputs)
    return module


if __name__ == "__main__":
    script, folder, *sys.argv[1:] = sys.argv[1:]
    tiny(script, folder).main()
