"""第 4 章 · 4.1 节　先搭骨架：一个只有两头、中间空着的 GPT

读完你应该能回答：
    1. GPT_CONFIG_124M 的 7 个超参数各管什么？哪几个决定参数量？
    2. 从词元编号到 logits 要经过哪几站，每一站的形状是什么？
    3. 同一个词元、同一个位置，为什么两次的分数不同？model.eval() 改了什么？

运行：
    python ch04/main/example_01_dummy_gpt.py
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 3 秒，0.6 GB（2 核 CPU）

形状记号（全书统一）：b 批大小　t 序列长度（词元数）　d 嵌入维度　V 词表大小
"""

import os
import sys
from pathlib import Path

import tiktoken
import torch
import torch.nn as nn


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


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion

# %% 4.1　配置：7 个数，就是一个 GPT-2 small 的全部图纸
# 写成字典而不是一个个参数，是因为后面每个类都要用到其中几个，传一个 cfg 就够了；
# 换成 medium、large、XL 也只是换一份字典，代码一行不改。

# GPT-2 small 的全部超参数。改其中一个再运行，看看参数量和输出怎样变，是理解它们最快的办法。
GPT_CONFIG_124M = {
    "vocab_size": 50257,  # 词表大小 V：GPT-2 的 BPE 分词器有这么多词元
    "context_length": 1024,  # 一次最多看多少个词元；位置嵌入只有这么多行，再长就没有位置可用
    "emb_dim": 768,  # 嵌入维度 d：每个词元用几个数表示。翻倍，每个块的参数变 4 倍，总数约 3 倍
    "n_heads": 12,  # 注意力头数 h，必须能整除 d
    "n_layers": 12,  # 叠几个 Transformer 块。翻倍，块里的参数量也翻倍
    "drop_rate": 0.1,  # 训练时随机丢弃的比例，防止过拟合；评估和生成时自动关闭
    "qkv_bias": False,  # Q、K、V 的投影带不带偏置；加载 OpenAI 的权重时要改成 True
}
print("【4.1】GPT_CONFIG_124M")
for key, value in GPT_CONFIG_124M.items():
    print(f"  {key:<15}{value!s:>6}")


# %% 两个占位的零件：什么也不做，只把形状留对
# 先让整条线跑通、每一站的形状都对，再一节一节换成真的（4.2 归一化、4.5 块）。
# 这是写大程序的好习惯：出了错，一定在刚换上去的那个零件里。
class DummyTransformerBlock(nn.Module):
    """占位的 Transformer 块：原样放行，4.5 节换成真的；cfg 是给真块留的位置。"""

    def __init__(self, cfg):
        super().__init__()

    def forward(self, x):
        """(b, t, d) → (b, t, d)，什么也不做。"""
        return x


class DummyLayerNorm(nn.Module):
    """占位的层归一化：原样放行，4.2 节换成真的；参数与 nn.LayerNorm 一样，但用不到。"""

    def __init__(self, normalized_shape, eps=1e-5):
        super().__init__()

    def forward(self, x):
        """(b, t, d) → (b, t, d)，什么也不做。"""
        return x


# %% 骨架：两头是真的，中间用占位的零件
class DummyGPTModel(nn.Module):
    """GPT 的骨架：词嵌入 + 位置嵌入 → n 个占位的块 → 占位的归一化 → 输出层。

    参数:
        cfg (dict): 模型配置，见 GPT_CONFIG_124M

    形状:
        输入 (b, t) 的词元编号 → 输出 (b, t, V) 的 logits（未归一化的分数）

    出处: 原书 4.1 节
    """

    def __init__(self, cfg):
        super().__init__()
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.Sequential(*[DummyTransformerBlock(cfg) for _ in range(cfg["n_layers"])])
        self.final_norm = DummyLayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)

    def forward(self, in_idx):
        """前向传播。

        参数:
            in_idx (Tensor): 词元编号，(b, t)

        返回:
            Tensor: logits，(b, t, V)
        """
        # ① 编号 → 向量：词是什么（tok）加上在第几个位置（pos）。pos 没有批维度，会对每个样本各加一次（广播）。
        tok_embeds = self.tok_emb(in_idx)  # (b, t, d)
        pos_embeds = self.pos_emb(torch.arange(in_idx.shape[1], device=in_idx.device))  # (t, d)
        x = self.drop_emb(tok_embeds + pos_embeds)  # (b, t, d)
        # ② n 个块，再归一化。形状不变，所以叠几个都行。
        x = self.trf_blocks(x)  # (b, t, d)
        x = self.final_norm(x)  # (b, t, d)
        # ③ 向量 → 给词表里的每个词元打一个分。
        return self.out_head(x)  # (b, t, V)


# %% 输入：两句话，各 4 个词元，叠成一批
tokenizer = tiktoken.get_encoding("gpt2")
texts = ["Every effort moves you", "Every day holds a"]
batch = torch.stack([torch.tensor(tokenizer.encode(text)) for text in texts])  # (b, t)　长度不同是叠不起来的
print(f"\n两句话的词元编号　{tuple(batch.shape)}　(b, t)")
print(batch)

# %% 跑一遍：(b, t) 个编号进去，(b, t, V) 个分数出来
torch.manual_seed(123)
model = DummyGPTModel(GPT_CONFIG_124M)
logits = model(batch)  # (b, t, V)
print(f"\nlogits　{tuple(logits.shape)}　(b, t, V)：每个位置都给词表里的每个词元各打一分")
print(logits)

# %% 两句话都以 Every 开头，分数却不一样：dropout 开着
# 同一个词元，又都在第 1 个位置，占位的块也不看别的词元，按理应该完全一样。
# 但刚建好的模型处在训练模式（model.training 为 True），dropout 开着：随机挑一成的数变成 0，其余除以 0.9 补回来。
print(f"\n训练模式（model.training = {model.training}）　两句开头的 Every，各取前 3 个分数")
print(logits[:, 0, :3].detach())

model.eval()  # 评估模式：dropout 不再起作用。它只改一个开关，参数一个也不动
logits_eval = model(batch)  # (b, t, V)
print(f"评估模式（model.training = {model.training}）")
print(logits_eval[:, 0, :3].detach())

# %% 这个数字对吗？
print("\n这个数字对吗？")
same = batch.tolist() == [[6109, 3626, 6100, 345], [6109, 1110, 6622, 257]]
confirm("编号与原书一致", same, "词表不是 GPT-2 的")
confirm("logits 的形状是 (2, 4, 50257)", logits.shape == (2, 4, 50257), "输出层的方向反了，应该是 d → V")
same = torch.allclose(logits_eval[0, 0], logits_eval[1, 0], atol=1e-5)
confirm("评估模式下，同一个词元在同一个位置，分数相同", same, "忘了 model.eval()")
same = torch.allclose(logits_eval[0, 0, :3], torch.tensor([-1.1947, 0.1392, -0.8616]), atol=1e-3)
confirm("评估模式的第一行以 -1.1947, 0.1392, -0.8616 开头", same, "创建各层的次序变了")
# 书上打印的是训练模式的。dropout 丢掉哪些位置，可能随操作系统和 PyTorch 版本而变，所以只报告，不打 ✗。
same = torch.allclose(logits[0, 0, :3], torch.tensor([-1.2034, 0.3201, -0.7130]), atol=1e-3)
report = "相同" if same else "不同：drop_rate 改过，或这台机器的 dropout 丢了别的位置"
print(f"  · 训练模式的第一行与原书的 -1.2034, 0.3201, -0.7130 {report}")

# %% 动手改
# 1. 把配置里的 drop_rate 改成 0.0：先猜训练模式与评估模式的 logits 还会不会不同，再运行。
# 2. 把 n_layers 改成 48：logits 变了吗？为什么？（提示：占位的块里有什么？）
# 3. 把第二句改成 "Every day"：torch.stack 会报什么错？第 6 章用填充（padding）解决它。
