"""第 5 章 · 5.5 节　读 OpenAI 的 GPT-2 权重

读完、敲完这个脚本，你应该能不看书回答：
    1. 124M 这个名字里的数，是怎么从 12 层、768 维算出来的？第 4 章数出来的 163,009,536 又多在哪里？
    2. 权重文件里只有名字和数；模型有几层、几个头，从哪里知道？
    3. 为什么打开一个 500 MB 的文件，几乎不用等？

运行：
    python ch05/main/gpt_download.py                  # 设置、权重的名字和形状，与原书核对；没有文件就先下载（548 MB）
    python ch05/main/gpt_download.py --size 355M
    约 2 秒，0.3 GB（2 核 CPU，不算下载）

原书用 TensorFlow 读 OpenAI 最初发布的文件，为此要装一个很大的包；这里读 hub 上的 safetensors，数字是同一份。
下载的事都在 setup/download.py 里：镜像、断点续传、核对 SHA-256；也可以先单独运行 python setup/download.py gpt2-124M。

形状记号（全书统一）：
    d 嵌入维度　　V 词表大小　　n_ctx 上下文长度
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

from safetensors import SafetensorError, safe_open

# 权重文件里没有这些数，尤其是头数：切成 12 头还是 16 头，张量的形状一样。所以要另外记着（原书从 hparams.json 读）。
# 四种规模，每个头都是 64 维：768 / 12 = 1024 / 16 = 1280 / 20 = 1600 / 25 = 64。
GPT2_SETTINGS = {
    "124M": {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12},
    "355M": {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 1024, "n_head": 16, "n_layer": 24},
    "774M": {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 1280, "n_head": 20, "n_layer": 36},
    "1558M": {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 1600, "n_head": 25, "n_layer": 48},
}


def gpt2_shapes(settings):
    """列出 GPT-2 的权重文件里应有的每一项：名字和形状。

    参数:
        settings (dict): 模型的大小，GPT2_SETTINGS 的一项

    返回:
        dict: 名字 → 形状，如 "h.0.attn.c_attn.weight" → (768, 2304)
    """
    d = settings["n_embd"]
    # 每一块里的名字都相同。权重是"输入在前、输出在后"，算 x @ w + b；nn.Linear 正好相反，装进模型时要转置。
    block = {
        "ln_1.weight": (d,), "ln_1.bias": (d,),
        "attn.c_attn.weight": (d, 3 * d), "attn.c_attn.bias": (3 * d,),  # Q、K、V 三个矩阵左右并排
        "attn.c_proj.weight": (d, d), "attn.c_proj.bias": (d,),
        "ln_2.weight": (d,), "ln_2.bias": (d,),
        "mlp.c_fc.weight": (d, 4 * d), "mlp.c_fc.bias": (4 * d,),
        "mlp.c_proj.weight": (4 * d, d), "mlp.c_proj.bias": (d,),
    }  # fmt: skip
    shapes = {"wte.weight": (settings["n_vocab"], d), "wpe.weight": (settings["n_ctx"], d)}  # 词嵌入、位置嵌入
    for layer in range(settings["n_layer"]):
        shapes |= {f"h.{layer}.{name}": shape for name, shape in block.items()}
    return shapes | {"ln_f.weight": (d,), "ln_f.bias": (d,)}  # 最后的层归一化；没有输出层，它与词嵌入共用一份


# region 沿用 setup/find_data.py: find_data
def find_data(*names):
    """到几个数据文件夹里依次找，返回找到的第一个；都没有，就说先运行哪条命令，退出码 2。（详解见 setup/find_data.py）"""
    here = Path(__file__ if "__file__" in globals() else "x").resolve()
    root = next((folder for folder in here.parents if (folder / "setup" / "data").is_dir()), Path())
    for folder in [os.environ.get("LLM_DATA_DIR"), root / "setup" / "downloads", root / "setup" / "data", root / "ch05" / "outputs"]:
        for name in names:
            if folder and (Path(folder) / name).exists():
                return Path(folder) / name
    commands = {"tiktoken": "setup/prepare.py", "gpt_mini.pth": "ch05/main/gpt_train.py（约 90 秒）", "gpt2-124M.pth": "ch05/main/gpt_download.py"}
    print(f"找不到 {names[0]}，请先运行 python {commands.get(names[0], 'setup/download.py')}", file=sys.stderr)
    sys.exit(2)


# endregion


def find_gpt2_file(model_size, models_dir=None):
    """找一种规模的权重文件 gpt2-规模.safetensors。

    次序：models_dir → 环境变量 LLM_DATA_DIR → setup/downloads/（setup/download.py 下载到那里，用的就是这个名字）。

    参数:
        model_size (str): "124M"、"355M"、"774M" 或 "1558M"
        models_dir (str 或 None): 先到这个文件夹里找

    返回:
        Path: 文件

    异常:
        ValueError: 没有这种规模
        FileNotFoundError: 哪里都没有，还没下载
    """
    if model_size not in GPT2_SETTINGS:
        raise ValueError(f"没有 {model_size} 这种规模，可选：{'、'.join(GPT2_SETTINGS)}")
    name = f"gpt2-{model_size}.safetensors"
    if models_dir and (Path(models_dir) / name).is_file():
        return Path(models_dir) / name
    try:
        return find_data(name)
    except FileNotFoundError:
        raise FileNotFoundError(f"找不到 {name}，请先下载：python setup/download.py gpt2-{model_size}") from None


def load_gpt2_params_from_safetensors(path, settings):
    """把一个 safetensors 文件里的权重，整理成原书的 params：按层、按部件一级一级地放。

    参数:
        path (str 或 Path): GPT-2 的权重，hub 上的或 transformers 存的
        settings (dict): 模型的大小，GPT2_SETTINGS 的一项

    形状:
        params["wte"] (V, d)　params["wpe"] (n_ctx, d)　params["g"]、params["b"] (d,)
        每一块里，如 params["blocks"][0]["attn"]["c_attn"]["w"] (d, 3d)，params["blocks"][0]["attn"]["c_attn"]["b"] (3d,)；其余见 gpt2_shapes

    返回:
        dict: 嵌套的字典，最里面是 float32 的 NumPy 数组

    异常:
        ValueError: 读不出来、不是这种规模的 GPT-2，或少了、多了什么

    出处: 原书 5.5 节（那里读的是 TensorFlow 的检查点）
    """
    try:
        file = safe_open(path, framework="pt")  # 只读开头的目录，数还没读
    except (SafetensorError, OSError):
        raise ValueError(f"{path} 读不出来：不是 safetensors 文件，或没有下载完整（核对：python setup/download.py --verify）") from None
    with file:
        # ① 名字。GPT2LMHeadModel 存的文件，每个名字前面多一个 transformer.；去掉它，两种文件就一样了。
        stored = {name.removeprefix("transformer."): name for name in file.keys()}
        # 不是参数的不要：attn.bias 其实是因果掩码，不是偏置；lm_head 是输出层，与词嵌入 wte 是同一个矩阵（权重共享）。
        names = [name for name in stored if not re.fullmatch(r"h\.\d+\.attn\.(bias|masked_bias)|lm_head\.weight", name)]

        # ② 形状。全部对上了才往下走：少一项、错一处，模型不会报错，只会说胡话。
        wanted, found = gpt2_shapes(settings), {name: tuple(file.get_slice(stored[name]).get_shape()) for name in names}
        for size, other in GPT2_SETTINGS.items():
            if found != wanted and found == gpt2_shapes(other):
                raise ValueError(f"{path} 是 {size} 的权重，要的却是 {settings['n_layer']} 层、{settings['n_embd']} 维的")
        wrong = [f"少了 {name}" for name in wanted if name not in found] + [f"多出 {name}" for name in found if name not in wanted]
        wrong += [f"{name} 的形状是 {found[name]}，应是 {wanted[name]}" for name in wanted if found.get(name, wanted[name]) != wanted[name]]
        if wrong:
            raise ValueError(f"{path} 不是 {settings['n_layer']} 层、{settings['n_embd']} 维的 GPT-2，有 {len(wrong)} 处对不上：{wrong[0]}")

        # ③ 数。名字按点拆开，一级一级放进去："h.3.attn.c_attn.weight" → params["blocks"][3]["attn"]["c_attn"]["w"]。
        params = {"blocks": [{} for _ in range(settings["n_layer"])]}
        outside = {"wte.weight": "wte", "wpe.weight": "wpe", "ln_f.weight": "g", "ln_f.bias": "b"}  # 不在块里的四样
        for name in wanted:
            tensor = file.get_tensor(stored[name])
            if not tensor.is_floating_point():
                raise ValueError(f"{path} 里 {name} 是整数（{tensor.dtype}），是量化过的权重，这里读不了")
            inner, key = params, outside.get(name)
            if key is None:
                _, layer, *parts, last = name.split(".")
                inner = params["blocks"][int(layer)]
                for part in parts:
                    inner = inner.setdefault(part, {})
                key = "b" if last == "bias" else "g" if parts[0].startswith("ln") else "w"  # g 是 gain，层归一化的缩放
            # 内存映射：文件是 float32 时，这里一个数也不复制，用到哪一页，系统才从硬盘读哪一页；半精度的转成 float32，要占一份内存。
            inner[key] = tensor.float().numpy()
        if "lm_head.weight" in stored and not file.get_tensor(stored["lm_head.weight"]).float().equal(file.get_tensor(stored["wte.weight"]).float()):
            raise ValueError(f"{path} 的输出层与词嵌入不是同一个矩阵，原书的 params 里没有放它的地方")
    return params


def download_and_load_gpt2(model_size, models_dir=None):
    """得到一种规模的 GPT-2：设置和权重；没有文件就先下载。

    参数:
        model_size (str): "124M"、"355M"、"774M" 或 "1558M"
        models_dir (str 或 None): 先到这个文件夹里找文件；下载的总是放进 setup/downloads/

    返回:
        tuple[dict, dict]: settings 和 params

    异常:
        ValueError: 没有这种规模，或文件不对
        FileNotFoundError: 没有文件，也找不到 setup/download.py
        SystemExit: 没有下载成功；原因 setup/download.py 已经印出来了

    示例:
        settings, params = download_and_load_gpt2(model_size="124M", models_dir="gpt2")

    出处: 原书 5.5 节
    """
    downloader = Path(__file__).resolve().parents[2] / "setup" / "download.py"
    try:
        path = find_gpt2_file(model_size, models_dir)
    except FileNotFoundError:
        if not downloader.is_file():  # 这个脚本被单独拷到了别处
            raise
        code = subprocess.run([sys.executable, str(downloader), f"gpt2-{model_size}"]).returncode
        try:
            path = find_gpt2_file(model_size, models_dir)
        except FileNotFoundError:
            sys.exit(code or 2)
    return dict(GPT2_SETTINGS[model_size]), load_gpt2_params_from_safetensors(path, GPT2_SETTINGS[model_size])


def flatten(tree, name=""):
    """把嵌套的 params 摊平，方便打印和数数：{"attn": {"c_attn": {"w": …}}} → [("attn.c_attn.w", …)]。

    参数:
        tree (dict、list 或 ndarray): params，或它里面的一级
        name (str): 走到这一级的名字

    返回:
        list[tuple]: 每个数组一项：名字和数组
    """
    if not isinstance(tree, (dict, list)):
        return [(name, tree)]
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return [pair for key, value in inner for pair in flatten(value, f"{name}.{key}".lstrip("."))]


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


def main():
    """读一种规模的权重，打印设置、名字和形状，与原书 5.5 节核对。"""
    parser = argparse.ArgumentParser(description="5.5 节　读 OpenAI 的 GPT-2 权重")
    parser.add_argument("--size", default="124M", choices=GPT2_SETTINGS, help="哪种规模（默认：124M）")
    parser.add_argument("--models-dir", help="先到这个文件夹里找 gpt2-规模.safetensors（默认：LLM_DATA_DIR，再 setup/downloads）")
    args = parser.parse_args()
    try:
        settings, params = download_and_load_gpt2(args.size, args.models_dir)
        path = find_gpt2_file(args.size, args.models_dir)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:  # 下载中途按了 Ctrl-C，setup/download.py 已经说了怎样接着下
        sys.exit(130)

    print(f"文件　　{path}")
    print(f"【5.5】设置　　{settings}")
    print(f"【5.5】params 的键　　{list(params)}")
    print(f"【5.5】{len(params['blocks'])} 块，第 1 块里有：")
    for name, array in flatten(params["blocks"][0]):
        print(f"  {name:<14}{array.shape}")
    wte = params["wte"]
    print(f"【5.5】词嵌入 wte　{wte.shape}　(V, d)\n{wte}")

    print("\n这个数字对吗？")
    d, n_layer = settings["n_embd"], settings["n_layer"]
    # 一块：注意力 4d² + 4d（Q、K、V 和 out_proj，都带偏置），前馈网络 8d² + 5d，两个层归一化 4d，合计 12d² + 13d。
    total = sum(array.size for _, array in flatten(params))
    by_hand = (settings["n_vocab"] + settings["n_ctx"]) * d + n_layer * (12 * d * d + 13 * d) + 2 * d
    confirm(f"(V + n_ctx)·d + 层数·(12d² + 13d) + 2d = {by_hand:,}，名字里的 {args.size} 就是它", total == by_hand, "漏了某一块，或多数了输出层")
    more = settings["n_vocab"] * d  # 第 4 章的模型没有共享输出层
    print(f"  输出层与词嵌入共用一个矩阵（权重共享）；我们的 GPTModel 分成两个，所以再多 {more:,} 个")
    if path.stat().st_size == 548_105_171:  # 只有 OpenAI 的 124M 才核对书上的数，自己训练的同样大小的不必
        broken = "文件坏了：python setup/download.py --verify"
        confirm("wte 的开头是 -0.11010301、-0.03926672、0.03310751", abs(wte[0, :3] - [-0.11010301, -0.03926672, 0.03310751]).max() < 1e-8, broken)
        confirm("wte 的最后一个数是 0.12067825", abs(wte[-1, -1] - 0.12067825) < 1e-8, broken)


if __name__ == "__main__":
    main()
