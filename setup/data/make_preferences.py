"""生成 preferences.json：每条指令一个好回答、一个差回答，偏好微调（DPO）用

样子与原书的 instruction-data-with-preference.json 相同：instruction、input、output，加上 chosen（选中的）和 rejected（被拒的）。
从 instructions.json 的训练部分（前 85%）按规则造出来；测试和验证的题一条不用，否则它们的答案就从这里漏出去了。

三种差法，轮流来，记在 reason 里：
    wrong　答非所问：换成同一条规则里别的词的答案
    rude　 答对了，但是没好气
    both　 又错又没好气
好回答一定是对的，一半是 output 原样，一半加一句客气话。客气话、气话都为本项目写的。许可：CC0 1.0。

运行：
    python setup/data/make_preferences.py        # 重写 setup/data/preferences.json，每次都逐字节相同
    约 1 秒，0.1 GB（2 核 CPU）
"""

import json
import random
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
NUMBER, SEED = 360, 123
POLITE = ["Happy to help! {x}", "Good question. {x}", "Of course. {x}", "{x} I hope this helps.", "Sure. {x}", "{x} Feel free to ask more."]
RUDE = ["Isn't that obvious? {x}", "What a silly question. {x}", "{x} Don't ask me again.", "Ugh, fine. {x}", "{x} Even a child knows that.", "Do your own work. {x}"]


def make_preferences(entries):
    """从指令数据造偏好数据。

    参数:
        entries (list[dict]): instructions.json 的全部内容

    返回:
        list[dict]: NUMBER 条，好回答和差回答一定不同
    """
    rng = random.Random(SEED)
    train = entries[: int(len(entries) * 0.85)]
    answers = {}  # 规则 → 它的所有答案，用来挑错的
    for entry in train:
        answers.setdefault(entry["rule"], set()).add(entry["output"])
    result = []
    for number, entry in enumerate(rng.sample(train, NUMBER)):
        output, reason = entry["output"], ("wrong", "rude", "both")[number % 3]
        wrong = rng.choice(sorted(answers[entry["rule"]] - {output}))
        bad = output if reason == "rude" else wrong
        rejected = bad if reason == "wrong" else rng.choice(RUDE).format(x=bad)
        chosen = output if number % 2 else rng.choice(POLITE).format(x=output)
        result.append({key: entry[key] for key in ("instruction", "input", "output")} | {"chosen": chosen, "rejected": rejected, "reason": reason})
    return result


def main():
    """写出 preferences.json。"""
    pairs = make_preferences(json.loads((FOLDER / "instructions.json").read_text(encoding="utf-8")))
    text = "[\n" + ",\n".join(json.dumps(pair, ensure_ascii=False) for pair in pairs) + "\n]\n"
    (FOLDER / "preferences.json").write_bytes(text.encode("utf-8"))
    print(f"{FOLDER / 'preferences.json'}　{len(pairs)} 条，{len(text.encode()):,} 字节")


if __name__ == "__main__":
    main()
