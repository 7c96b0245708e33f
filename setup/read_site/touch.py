"""边读边看之五：五个可以动手的页面用的数，全部由项目自己的组件算出来

bpe 合并的次序来自分词器；attention 的分数来自 3.5 节的例子和训练过的 mini；sampling 是 SmolLM2 对下一个词元的打分；
loss 是 gpt_train.py 那次训练的记录；kv_cache 是带缓存的 GPT 每一步存下的键。数记在 setup/read_records/touch/，画页面时只读它。

运行：由 setup/read.py --run touch/bpe 等调用
"""

import base64
import hashlib
import importlib.util
import json
import os
import re
import sys
from datetime import date
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
import record

ROOT = record.ROOT
FOLDER = record.RECORDS / "touch"
PROMPT, STEPS = "Every effort moves you", 12  # kv_cache：提示词，再写几个词元
SENTENCE = "Standish was a long time"  # attention：给训练过的 mini 看的一句话
# 网址 → 标题、说明、数由哪几个脚本的组件算出
PAGES = {
    "bpe": (
        "字节对编码：一对一对地合并",
        "GPT-2 的分词器从单个字节出发，每次把编号最小、也就是训练时最早学会的那一对并成一个。打几个字，一步一步地看。道理在 2.5 节。",
        ["ch02/main/example_02_bpe.py"],
    ),
    "attention": (
        "一个注意力头：分数怎样变成权重",
        "先除以 √k，再遮住后面的词，再 softmax。拖一拖除数，换一换掩码，看权重怎样变。道理在 3.4.1、3.5.1 节。",
        ["ch03/main/example_03_causal_attention.py", "ch03/main/example_05_multihead_attention.py", "ch05/main/gpt_train.py"],
    ),
    "sampling": (
        "温度、top-k、top-p：下一个词元抽哪个",
        "SmolLM2 读完一句话，给 49152 个词元各打了一个分。先除以温度，再按 top-k、top-p 去掉一些，剩下的重新归一。道理在 5.3 节和 exp_sampling.py。",
        ["ch05/experiments/exp_sampling.py"],
    ),
    "loss": (
        "损失曲线，和它那时写的字",
        "gpt_train.py 训练 mini 的那一次：拖到哪一轮，就看那一轮结束时它接着同一句话写了什么。底色是原文里一字不差的一段：背下来的。道理在 5.2 节。",
        ["ch05/main/gpt_train.py"],
    ),
    "kv_cache": (
        "KV 缓存：一个词元一个词元地填",
        "旧的词元看不到新的，它们的键和值就不会再变：存起来，每步只算新的那一个。一格是一个数，一行是一个词元的键。道理在 exp_kv_cache.py。",
        ["ch04/experiments/exp_kv_cache.py", "ch05/main/gpt_train.py"],
    ),
}


def packed(array):
    """一串数变成 base64，放进网页最省地方。

    参数:
        array (numpy.ndarray): 数

    返回:
        str: base64
    """
    return base64.b64encode(array.tobytes()).decode()


def load(script):
    """按路径导入一个脚本，用它里面的组件。

    参数:
        script (str): 相对项目根目录；要有 if __name__ == "__main__"

    返回:
        module: 脚本
    """
    spec = importlib.util.spec_from_file_location(Path(script).stem, ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def mini(script):
    """训练好的 mini，装进一个脚本的 GPTModel。

    参数:
        script (module): 里面有 GPTModel

    返回:
        nn.Module: 评估模式

    异常:
        RuntimeError: 还没有训练
    """
    import torch

    path = ROOT / "ch05" / "outputs" / "gpt_mini.pth"
    if not path.is_file():
        raise RuntimeError("还没有 mini，先运行 python ch05/main/gpt_train.py（约 90 秒）")
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    model = script.GPTModel(checkpoint["config"])
    model.load_state_dict(checkpoint["model"], strict=False)  # 带缓存的没有掩码那几个 buffer
    return model.eval()


def tokenizer():
    """GPT-2 的分词器，不联网。

    返回:
        tiktoken.Encoding: 分词器
    """
    import tiktoken

    os.environ["TIKTOKEN_CACHE_DIR"] = str(ROOT / "setup" / "downloads" / "tiktoken")
    return tiktoken.get_encoding("gpt2")


def bpe():
    """每个词元是由哪两个词元合并来的。

    返回:
        dict: bytes 前 256 个词元各是哪个字节；pairs 其余的，每个两个编号（uint16）
    """
    import numpy

    encoding = tokenizer()
    spelled = [encoding.decode_single_token_bytes(i) for i in range(encoding.n_vocab - 1)]
    rank_of = {piece: i for i, piece in enumerate(spelled)}
    pairs = []
    for rank in range(256, len(spelled)):
        parts = [bytes([byte]) for byte in spelled[rank]]
        while len(parts) > 2:  # 与 example_02_bpe.py 的 merge_by_hand 一样地合并，剩下两段就是它的来历
            ranks = [rank_of.get(left + right, rank) for left, right in zip(parts, parts[1:])]
            at = ranks.index(min(ranks))
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        pairs += [rank_of[parts[0]], rank_of[parts[1]]]
    return {"bytes": [piece[0] for piece in spelled[:256]], "pairs": packed(numpy.array(pairs, dtype="<u2"))}


def attention():
    """几个注意力头的分数，和组件自己算出的权重。

    返回:
        dict: heads 每个头一项：name、words、k、scores（还没有除以 √k、没有遮）、weights（组件算的，因果掩码，除以 √k）
    """
    import contextlib
    import io
    import runpy

    import torch

    with contextlib.redirect_stdout(io.StringIO()):
        book = runpy.run_path(str(ROOT / "ch03/main/example_03_causal_attention.py"))
    words = ["Your", "journey", "starts", "with", "one", "step"]
    heads = [{"name": "3.5.1 节的例子，没有训练过", "words": words, "k": 2, "scores": (book["queries"] @ book["keys"].T).tolist(), "weights": book["masked_simple_norm"].tolist()}]
    script, encoding = load("ch05/main/gpt_train.py"), tokenizer()
    model, ids = mini(script), encoding.encode(SENTENCE)
    for layer, number in ((0, 0), (1, 3), (2, 5), (3, 2)):
        att, kept = model.trf_blocks[layer].att, {}
        hooks = [getattr(att, name).register_forward_hook(lambda _, inputs, output, name=name, kept=kept: kept.__setitem__(name, output)) for name in ("W_query", "W_key")]
        hooks.append(att.dropout.register_forward_hook(lambda _, inputs, output, kept=kept: kept.__setitem__("weights", output)))
        with torch.no_grad():
            model(torch.tensor([ids]))
        for hook in hooks:
            hook.remove()
        queries, keys = (kept[name].view(len(ids), att.num_heads, att.head_dim)[:, number] for name in ("W_query", "W_key"))  # (t, k)
        scores = queries @ keys.T  # (t, t)
        heads.append({"name": f"训练过的 mini，第 {layer + 1} 层第 {number + 1} 个头", "words": [encoding.decode([i]) for i in ids], "k": att.head_dim, "scores": scores.tolist(), "weights": kept["weights"][0, number].tolist()})
    for head in heads:
        for name in ("scores", "weights"):
            head[name] = [[round(number, 6) for number in row] for row in head[name]]
    return {"heads": heads}


def sampling():
    """SmolLM2 读完两句话，对下一个词元的打分。

    返回:
        dict: prompts 每句一项：text、logits（float16）、top 分数最高的编号和文字
    """
    import torch

    script = load("ch05/experiments/exp_sampling.py")
    model, encoding = script.load_smollm2()
    found = []
    for text in (script.FLAT, script.SHARP):
        with torch.no_grad():
            logits = model(torch.tensor([encoding.encode(text)]), last_only=True)[0, -1].half()  # (V,)
        top = logits.float().topk(40).indices.tolist()
        found.append({"text": text, "logits": packed(logits.numpy().astype("<f2")), "top": [[i, encoding.decode([i])] for i in top]})
    return {"prompts": found}


def memorised(text, book, least=18):
    """一段话里，哪几段在原文里一字不差。

    参数:
        text (str): 模型写的
        book (str): 训练用的文本
        least (int): 至少多少个字符才算

    返回:
        list[list[int]]: 每段的起止

    示例:
        >>> memorised("abc the quick brown fox jumps x", "see the quick brown fox jumps over", 10)
        [[3, 30]]
    """
    found, at = [], 0
    while at < len(text) - least:
        size = 0
        while at + size < len(text) and text[at : at + size + 1] in book:
            size += 1
        if size >= least:
            found.append([at, at + size])
            at += size
        else:
            at += 1
    return found


def loss():
    """gpt_train.py 那次训练：每次评估的损失，每轮结束时写的字。

    返回:
        dict: points 每次评估（轮、步、训练损失、验证损失）；texts 每轮写的字和背下来的几段

    异常:
        RuntimeError: 那次训练的输出还没有录
    """
    name = "ch05/main/gpt_train.py"
    kept = record.load(name, (ROOT / name).read_text(encoding="utf-8"))
    if kept.state != "fresh":
        raise RuntimeError(f"先录 {name}：python setup/read.py --run {name}")
    output = "".join(part[1] for parts in kept.cells.values() for part in parts if part[0] == "text")
    book = re.sub(r"\s+", " ", (ROOT / "setup" / "data" / "story-en.txt").read_text(encoding="utf-8"))
    points, texts = [], []
    for line in output.splitlines():
        if match := re.match(r"(?:训练前|第 +(\d+) 轮　第 +(\d+) 步)　训练损失 ([\d.]+)　验证损失 ([\d.]+)", line):
            points.append([int(match[1] or 0), int(match[2] or -1), float(match[3]), float(match[4])])
        elif line.startswith("    Every effort moves you"):
            text = re.sub(r"\s+", " ", line.strip())
            texts.append({"text": text, "copied": memorised(text, book)})
    return {"points": points, "texts": texts}


def kv_cache():
    """带缓存的 GPT 一步步写：每一步写了什么，每一层每个头的键。

    返回:
        dict: words 每个词元；prompt 提示词几个；keys 每层每头每个词元的键（int8，最大的绝对值是 127）；gap 与不用缓存相差最多多少
    """
    import numpy
    import torch

    script, encoding = load("ch04/experiments/exp_kv_cache.py"), tokenizer()
    model = mini(script)
    ids = torch.tensor([encoding.encode(PROMPT)])  # (1, t)
    caches = [script.ConcatCache() for _ in model.trf_blocks]
    prompt, gap = ids.shape[1], 0.0
    with torch.no_grad():
        for step in range(STEPS):
            new = ids if step == 0 else ids[:, -1:]  # (1, n)
            logits = model(new, caches)[:, -1]  # (1, V)
            gap = max(gap, (logits - model(ids)[:, -1]).abs().max().item())
            ids = torch.cat((ids, logits.argmax(dim=-1, keepdim=True)), dim=1)  # (1, t + 1)
    keys = torch.stack([cache.keys[0] for cache in caches]).numpy()  # (l, h, t, k)
    scale = numpy.abs(keys).max(axis=(2, 3), keepdims=True)
    words = [encoding.decode([i]) for i in ids[0].tolist()]
    return {"words": words, "prompt": prompt, "shape": list(keys.shape), "keys": packed((keys / scale * 127).round().astype("int8")), "scale": [[round(float(x), 4) for x in row] for row in scale[:, :, 0, 0]], "gap": gap}


def digest(name, version=None):
    """数是用哪一版的脚本算的。

    参数:
        name (str): 哪一页
        version (str): torch 的版本；默认是 requirements.txt 里写的

    返回:
        str: 16 位十六进制
    """
    scripts = [record.TIME.sub("", (ROOT / script).read_text(encoding="utf-8")) for script in PAGES[name][2]]
    source = re.search(rf"^def {name}\(.*?(?=^def )", Path(__file__).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)[0]
    return hashlib.sha256("\0".join([*scripts, source, PROMPT, SENTENCE, str(STEPS), version or record.pinned()]).encode()).hexdigest()[:16]


def read(name):
    """读一页的数。

    参数:
        name (str): 哪一页

    返回:
        tuple[str, dict]: fresh、stale 或 missing；数
    """
    try:
        kept = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "missing", {}
    return ("fresh" if kept["digest"] == digest(name) else "stale"), kept


def write(name):
    """算一页的数，写下来。

    参数:
        name (str): 哪一页

    返回:
        Path: 写到了哪里

    异常:
        RuntimeError: 少了模型或记录
    """
    import importlib.metadata

    version = importlib.metadata.version("torch").split("+")[0]
    try:
        made = globals()[name]()
    except (ValueError, OSError, ImportError) as error:
        raise RuntimeError(str(error)) from None
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"digest": digest(name, version), "date": date.today().isoformat()} | made, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    os.replace(part, path)
    return path
