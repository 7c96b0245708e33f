"""第 2 章 · 2.7–2.8 节　词嵌入与位置嵌入：编号变成向量

读完你应该能回答：
    1. 嵌入层（embedding layer）到底做了什么运算？它与 one-hot 乘矩阵是什么关系？
    2. 刚建好的嵌入层里是随机数，这些向量后来怎样有了意义？
    3. 为什么还要加位置嵌入？不加的话，模型难以分清什么？

运行：
    python ch02/main/example_04_embeddings.py
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 2 秒，0.3 GB（2 核 CPU）

形状记号（全书统一）：b 批大小　t 序列长度（词元数）　d 嵌入维度　V 词表大小
"""

import os
import sys
from pathlib import Path

import tiktoken
import torch
from torch.utils.data import DataLoader, Dataset


# region 沿用 setup/find_data.py: find_data
def find_data(*names):
    """到几个数据文件夹里依次找，返回找到的第一个；都没有，就说先运行哪条命令，退出码 2。（详解见 setup/find_data.py）"""
    here = Path(__file__ if "__file__" in globals() else "x").resolve()
    root = next((folder for folder in here.parents if (folder / "setup" / "data").is_dir()), Path())
    for folder in [os.environ.get("LLM_DATA_DIR"), root / "setup" / "downloads", root / "setup" / "data", root / "ch05" / "outputs"]:
        for name in names:
            path = Path(folder or "") / name
            if folder and (path.is_file() or any(path.glob("*"))):
                return path
    commands = {"tiktoken": "setup/prepare.py", "gpt_mini.pth": "ch05/main/gpt_train.py（约 90 秒）"}
    commands |= {f"gpt2-{size}.pth": f"ch05/main/gpt_download.py --size {size}" for size in ("124M", "355M", "774M", "1558M")}
    print(f"找不到 {names[0]}，请先运行 python {commands.get(names[0], 'setup/download.py')}", file=sys.stderr)
    sys.exit(2)


# endregion

os.environ["TIKTOKEN_CACHE_DIR"] = str(find_data("tiktoken"))  # GPT-2 的词表由 setup/run.sh 放好，不联网


# region 沿用 ch02/main: GPTDatasetV1, create_dataloader_v1
class GPTDatasetV1(Dataset):
    """把一段长文本切成许多等长的"输入—目标"样本。（详解见 ch02/main/example_03_sliding_window.py）"""

    def __init__(self, txt, tokenizer, max_length, stride):
        token_ids = tokenizer.encode(txt, allowed_special={"<|endoftext|>"})
        if len(token_ids) <= max_length:
            raise ValueError(f"文本只有 {len(token_ids)} 个词元，凑不出一个长 {max_length} 的样本（目标还要多 1 个），请换长一点的文本或改小 max_length")
        ids = torch.tensor(token_ids)
        self.input_ids = ids[:-1].unfold(0, max_length, stride)  # (n, t)
        self.target_ids = ids[1:].unfold(0, max_length, stride)  # (n, t)

    def __len__(self):
        return len(self.input_ids)

    def __getitem__(self, idx):
        return self.input_ids[idx], self.target_ids[idx]


def create_dataloader_v1(txt, batch_size=4, max_length=256, stride=128, shuffle=True, drop_last=True, num_workers=0):
    """文本 → 一批一批的（输入，目标）。（详解见 ch02/main/example_03_sliding_window.py）"""
    dataset = GPTDatasetV1(txt, tiktoken.get_encoding("gpt2"), max_length, stride)
    return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, drop_last=drop_last, num_workers=num_workers)


# endregion


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion

# %% 2.7　一张小小的嵌入表：6 个词元，每个 3 维
# 为什么不直接把编号喂给模型？编号只是名字，5 号不比 1 号"大"；换成向量，才能在多个方向上表达"像"与"不像"。
input_ids = torch.tensor([2, 3, 5, 1])  # (t,)
vocab_size = 6
output_dim = 3
torch.manual_seed(123)  # 与原书同一个种子，方便逐位核对
embedding_layer = torch.nn.Embedding(vocab_size, output_dim)
print("【2.7】嵌入表　", tuple(embedding_layer.weight.shape), "(V, d)")
print(embedding_layer.weight)
# requires_grad=True：表里的数是参数。现在是随机数，训练时梯度会一点点改它，常在相似语境里出现的词元，向量会越来越像。

# %% 嵌入 = 查表：编号是几，就取第几行
print("\n查 3 号（第 4 行，编号从 0 开始）：", embedding_layer(torch.tensor([3])))
print("查", input_ids.tolist(), "：")
print(embedding_layer(input_ids))

# %% 查表 = one-hot 乘矩阵，只是快得多
# one-hot：长 V 的向量，只有编号那一位是 1。它乘以嵌入表，正好挑出那一行；所以嵌入层就是一个不带偏置的线性层。
# 但乘法要算 V × d 次，几乎全在乘 0；查表只拷贝 d 个数。V = 50257 时，少做五万倍的工夫。
one_hot = torch.nn.functional.one_hot(input_ids, num_classes=vocab_size).float()  # (t, V)
product = one_hot @ embedding_layer.weight  # (t, d)
print("\none-hot (t, V)")
print(one_hot)
print("one-hot @ 嵌入表 (t, d)")
print(product)

# %% 2.8　换成真实的尺寸：GPT-2 的词表，256 维
# GPT-2 small 是 768 维，最大的 GPT-3 是 12288 维；这里取 256，跑得快，道理一样。
vocab_size = 50257
output_dim = 256
token_embedding_layer = torch.nn.Embedding(vocab_size, output_dim)
print(f"\n【2.8】词嵌入表 {tuple(token_embedding_layer.weight.shape)}，{token_embedding_layer.weight.numel():,} 个参数")

# %% 取一批文本：8 个样本，每个 4 个词元
path = find_data("the-verdict.txt", "story-en.txt")
raw_text = path.read_text(encoding="utf-8")
is_book = path.name == "the-verdict.txt"
max_length = 4
dataloader = create_dataloader_v1(raw_text, batch_size=8, max_length=max_length, stride=max_length, shuffle=False)
inputs, targets = next(iter(dataloader))
print("文本", path)
print("词元编号", tuple(inputs.shape), "(b, t)")
print(inputs)

# %% 词嵌入（token embedding）：每个编号换成一个 256 维向量
token_embeddings = token_embedding_layer(inputs)  # (b, t, d)
print("\n词嵌入　　", tuple(token_embeddings.shape), "(b, t, d)")

# %% 位置嵌入（positional embedding）：每个位置也有一个向量
# 绝对位置嵌入：第 0、1、2、3 个位置各查一行，与那里是什么词元无关。GPT-2 的这张表也是训练出来的，
# 有 1024 行，所以它最多处理 1024 个词元：第 1025 个位置没有行可查，会报 IndexError。
context_length = max_length
pos_embedding_layer = torch.nn.Embedding(context_length, output_dim)
pos_embeddings = pos_embedding_layer(torch.arange(max_length))  # (t, d)
print("位置嵌入　", tuple(pos_embeddings.shape), "(t, d)")

# %% 相加，就是模型真正的输入
# (b, t, d) + (t, d)：PyTorch 自动把位置嵌入对每个样本各加一次（广播，broadcasting）。
# 为什么是相加而不是拼接？拼接会让维度变大；相加维度不变，256 维里足够容纳两种信息，怎样分开由模型自己学。
input_embeddings = token_embeddings + pos_embeddings  # (b, t, d)
print("输入嵌入　", tuple(input_embeddings.shape), "(b, t, d)")

# %% 不加位置会怎样？
# 同一个词元放在 4 个位置上，词嵌入一模一样，看不出谁先谁后。第 3 章的自注意力若没有掩码，对次序毫无感觉：
# "狗咬人"与"人咬狗"里，每个词得到的结果都相同。因果掩码（只许看前面）会漏进一点次序，但很弱，所以仍要加上位置。
same = torch.full((1, max_length), inputs[0, 0].item())  # (1, t)
same_tokens = token_embedding_layer(same)[0]  # (t, d)
same_inputs = same_tokens + pos_embeddings  # (t, d)
print(f"\n{same.tolist()[0]} 的词嵌入，前 3 维：")
print(same_tokens[:, :3])
print("加上位置嵌入之后：")
print(same_inputs[:, :3])

# %% 这个数字对吗？
print("\n这个数字对吗？")
book = torch.tensor([[0.3374, -0.1778, -0.1690], [0.9178, 1.5810, 1.3010], [1.2753, -0.2010, -0.1606]])
close = torch.allclose(embedding_layer.weight[:3], book, atol=1e-4)
confirm("嵌入表前 3 行与原书一致", close, "manual_seed(123) 之后、建表之前，又用过随机数")
confirm("查表 = one-hot 乘矩阵", torch.equal(product, embedding_layer(input_ids)), "one-hot 的长度不是词表大小")
confirm("输入嵌入的形状是 (8, 4, 256)", input_embeddings.shape == (8, 4, 256), "批大小、max_length 或 output_dim 改过")
added = input_embeddings - token_embeddings  # (b, t, d)　加上去的那一份
confirm("8 个样本加的都是同一份位置嵌入", (added - pos_embeddings).abs().max() < 1e-5, "位置嵌入按样本而不是按位置加了")
confirm("同一个词元在 4 个位置：词嵌入只有 1 种", len(same_tokens.unique(dim=0)) == 1, "查表前打乱了编号")
confirm("加上位置嵌入之后：4 种", len(same_inputs.unique(dim=0)) == max_length, "忘了加位置嵌入")
if is_book:
    first = inputs[0].tolist()
    confirm("第一行编号与原书一致：[40, 367, 2885, 1464]", first == [40, 367, 2885, 1464], "打乱了次序")

# %% 动手改
# 1. 把 input_ids 里的 5 改成 6：报 IndexError，因为表只有 6 行，编号到 5 为止。词表与模型不配套时就是这个错。
# 2. 删掉 torch.manual_seed(123)：每次运行嵌入表都不同，第一条自查变成 ✗；其余的自查仍是 ✓，因为它们不依赖具体的数。
# 3. 把 context_length = max_length 改成 = 2：取到第 3 个位置时报 IndexError。输入比上下文长度长，模型就会这样。
