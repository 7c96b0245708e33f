"""第 5 章 · 5.4 节　保存和读取：训练了半天，别白费

读完你应该能回答：
    1. 为什么存 state_dict，而不是把整个模型对象存下来？
    2. 接着训练时，为什么连优化器也要存？少存了它会怎样？
    3. weights_only=True 挡住了什么？safetensors 又是怎样从根上避免的？

运行：
    python ch05/main/example_04_save_load.py
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 6 秒，0.4 GB（2 核 CPU）；文件都写在临时文件夹里，结束时删掉

形状记号（全书统一）：b 批大小　t 序列长度（词元数）　d 嵌入维度　h 头数　k 每个头的维度（k = d / h）　V 词表大小　n 样本数
"""

import json
import os
import pickle
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn as nn
from safetensors.torch import load_file, save_file

# 改这里
BATCH_SIZE = 2  # 与 5.2 节相同；批越小，每一步的梯度就越不准，优化器的记忆也就越要紧
LEARNING_RATE = 1e-2
STEPS_BEFORE, STEPS_AFTER = 200, 30  # 存之前训练几步，读回来再训练几步


# region 沿用 ch03/main: MultiHeadAttention
class MultiHeadAttention(nn.Module):
    """带因果掩码的多头自注意力：h 个头并行计算，再拼接、混合。（详解见 ch03/main/example_05_multihead_attention.py）"""

    def __init__(self, d_in, d_out, context_length, dropout, num_heads, qkv_bias=False):
        super().__init__()
        if d_out % num_heads != 0:
            raise ValueError(f"d_out={d_out} 不能被 num_heads={num_heads} 整除，无法平均分给每个头")
        self.d_out = d_out
        self.num_heads = num_heads
        self.head_dim = d_out // num_heads
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.out_proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("mask", torch.triu(torch.ones(context_length, context_length, dtype=torch.bool), diagonal=1))

    def forward(self, x):
        b, t, _ = x.shape
        queries = self.W_query(x)  # (b, t, d_out)
        keys = self.W_key(x)  # (b, t, d_out)
        values = self.W_value(x)  # (b, t, d_out)
        queries = queries.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        keys = keys.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        values = values.view(b, t, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        scores = queries @ keys.transpose(2, 3)  # (b, h, t, t)
        scores.masked_fill_(self.mask[:t, :t], -torch.inf)
        weights = torch.softmax(scores / self.head_dim**0.5, dim=-1)  # (b, h, t, t)
        weights = self.dropout(weights)
        context = (weights @ values).transpose(1, 2)  # (b, t, h, k)
        context = context.contiguous().view(b, t, self.d_out)  # (b, t, d_out)
        return self.out_proj(context)


# endregion


# region 沿用 ch04/main: LayerNorm, GELU, FeedForward, TransformerBlock, GPTModel
class LayerNorm(nn.Module):
    """层归一化（layer normalization）：把每个词元的 d 个数调成均值 0、方差 1，再学着缩放和平移。（详解见 ch04/main/example_02_layernorm.py）"""

    def __init__(self, emb_dim):
        super().__init__()
        self.eps = 1e-5
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x):
        mean = x.mean(dim=-1, keepdim=True)  # (…, 1)
        var = x.var(dim=-1, keepdim=True, unbiased=False)  # (…, 1)
        norm_x = (x - mean) / torch.sqrt(var + self.eps)  # (…, d)
        return self.scale * norm_x + self.shift


class GELU(nn.Module):
    """GELU 激活函数：像 ReLU，但拐弯是圆滑的。（详解见 ch04/main/example_03_feedforward.py）"""

    def forward(self, x):
        return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


class FeedForward(nn.Module):
    """前馈网络（feed forward）：先升到 4 倍维度，过激活函数，再降回来。（详解见 ch04/main/example_03_feedforward.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(cfg["emb_dim"], 4 * cfg["emb_dim"]),
            GELU(),
            nn.Linear(4 * cfg["emb_dim"], cfg["emb_dim"]),
        )

    def forward(self, x):
        return self.layers(x)


class TransformerBlock(nn.Module):
    """Transformer 块：注意力 + 前馈网络，各自先归一化、再用残差连接加回去。（详解见 ch04/main/example_05_transformer_block.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.att = MultiHeadAttention(
            d_in=cfg["emb_dim"],
            d_out=cfg["emb_dim"],
            context_length=cfg["context_length"],
            num_heads=cfg["n_heads"],
            dropout=cfg["drop_rate"],
            qkv_bias=cfg["qkv_bias"],
        )
        self.ff = FeedForward(cfg)
        self.norm1 = LayerNorm(cfg["emb_dim"])
        self.norm2 = LayerNorm(cfg["emb_dim"])
        self.drop_shortcut = nn.Dropout(cfg["drop_rate"])

    def forward(self, x):
        shortcut = x
        x = self.norm1(x)
        x = self.att(x)  # (b, t, d)
        x = self.drop_shortcut(x)
        x = x + shortcut
        shortcut = x
        x = self.norm2(x)
        x = self.ff(x)  # (b, t, d)
        x = self.drop_shortcut(x)
        return x + shortcut


class GPTModel(nn.Module):
    """GPT：词嵌入 + 位置嵌入 → 一摞 Transformer 块 → 归一化 → 对每个位置给出整个词表的分数。（详解见 ch04/main/example_06_gpt_model.py）"""

    def __init__(self, cfg):
        super().__init__()
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.Sequential(*[TransformerBlock(cfg) for _ in range(cfg["n_layers"])])
        self.final_norm = LayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)

    def forward(self, in_idx):
        t = in_idx.shape[1]
        if t > self.pos_emb.num_embeddings:
            raise ValueError(f"输入有 {t} 个词元，超过了模型的上下文长度 {self.pos_emb.num_embeddings}")
        tok_embeds = self.tok_emb(in_idx)  # (b, t, d)
        pos_embeds = self.pos_emb(torch.arange(t, device=in_idx.device))  # (t, d)
        x = tok_embeds + pos_embeds  # (b, t, d)
        x = self.drop_emb(x)
        x = self.trf_blocks(x)  # (b, t, d)
        x = self.final_norm(x)
        return self.out_head(x)  # (b, t, V)


# endregion


# region 沿用 ch05/main: calc_loss_batch
def calc_loss_batch(input_batch, target_batch, model, device):
    """一批的损失：模型给正确的下一个词元的概率，取对数、取负，再对所有位置求平均。（详解见 ch05/main/example_01_loss.py）"""
    input_batch, target_batch = input_batch.to(device), target_batch.to(device)
    logits = model(input_batch)  # (b, t, V)
    return nn.functional.cross_entropy(logits.flatten(0, 1), target_batch.flatten())  # (b·t, V)，(b·t,)


# endregion


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


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion

# %% 一个小模型，训练 200 步
# 按字符分词（每个字符一个编号），词表只有几十个：一步几毫秒，马上就有一个"训练到一半"的模型可以存。
path = find_data("the-verdict.txt", "story-en.txt")
text = path.read_text(encoding="utf-8")
chars = sorted(set(text))
ids = torch.tensor([chars.index(char) for char in text])
inputs, targets = ids[:-1].unfold(0, 32, 32), ids[1:].unfold(0, 32, 32)  # (n, t)
val_inputs, val_targets = inputs[-50:], targets[-50:]  # (50, t)　最后 50 个样本不训练，只用来看损失
config = {
    "vocab_size": len(chars),
    "context_length": 32,
    "emb_dim": 64,
    "n_heads": 2,
    "n_layers": 2,
    "drop_rate": 0.0,
    "qkv_bias": False,
}
device = torch.device("cpu")
torch.manual_seed(123)
model = GPTModel(config)
optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1)
# 先抽好每一步用哪几个样本：后面几条路用同样的数据，差别才只来自"恢复了什么"。
batches = torch.randint(len(inputs) - 50, (STEPS_BEFORE + STEPS_AFTER, BATCH_SIZE))  # (s, b)　s 是步数


def train(model, optimizer, rows):
    """训练几步，每步之前先看一眼验证损失。

    参数:
        model (nn.Module): 语言模型
        optimizer (torch.optim.Optimizer): 优化器
        rows (Tensor): 每一步用哪几个样本，(s, b)，s 是步数

    返回:
        list[float]: 每步更新之前的验证损失
    """
    losses = []
    for row in rows:
        model.eval()
        with torch.no_grad():
            losses.append(calc_loss_batch(val_inputs, val_targets, model, device).item())
        model.train()
        optimizer.zero_grad()
        calc_loss_batch(inputs[row], targets[row], model, device).backward()
        optimizer.step()
    return losses


losses = train(model, optimizer, batches[:STEPS_BEFORE])
print(f"【5.4】文本　{path}")
print(f"训练 {STEPS_BEFORE} 步　验证损失 {losses[0]:.2f} → {losses[-1]:.2f}")

model.eval()
with torch.no_grad():
    expected = model(val_inputs)  # (50, t, V)　记下存之前的输出，读回来的模型应当一模一样

# %% 只存权重：state_dict
# state_dict 是"参数名 → 张量"的字典，不含代码。存整个模型对象（`torch.save(model)`）则会记下类的名字和文件位置，
# 以后改个文件名就读不出来了。代价是：读之前要先用同样的配置把模型建好，所以配置也得记着：
# 本项目的 .pth 都是 `{"config": 配置, "model": state_dict}`。
temporary = tempfile.TemporaryDirectory()  # 用完自动删除，中途出错也会
folder = Path(temporary.name)
state = model.state_dict()
print(f"\nstate_dict 里有 {len(state)} 项，前 3 项：")
for name in list(state)[:3]:
    print(f"  {name:<32} {tuple(state[name].shape)}")
torch.save({"config": config, "model": state}, folder / "model.pth")
print(f"model.pth　{(folder / 'model.pth').stat().st_size / 1024:.0f} KB")

# map_location：权重若是在 GPU 上存的，读到没有 GPU 的机器上会报错；先都放到 CPU，再用 model.to(device) 搬。
ckpt = torch.load(folder / "model.pth", map_location="cpu", weights_only=True)
loaded = GPTModel(ckpt["config"])  # 随机初始化的新模型，马上会被覆盖
with torch.no_grad():
    before = (loaded.eval()(val_inputs) - expected).abs().max().item()
    print("读取　", loaded.load_state_dict(ckpt["model"]))
    after = (loaded.eval()(val_inputs) - expected).abs().max().item()  # eval：要生成文本，先关掉 dropout
print(f"与原模型的输出最多差　读之前 {before:.2f}，读之后 {after}")

# %% 模型和优化器一起存：为了接着训练
both = {"model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
torch.save(both, folder / "model_and_optimizer.pth")
# AdamW 给每个参数记着两份"动量"：梯度的平均、梯度平方的平均，形状都与参数相同；所以文件约是只存权重的 3 倍。
size_ratio = (folder / "model_and_optimizer.pth").stat().st_size / (folder / "model.pth").stat().st_size
print(f"\n连优化器一起存，文件是 {size_ratio:.1f} 倍大；优化器给第 1 个参数记着：")
for name, value in optimizer.state_dict()["state"].get(0, {}).items():
    print(f"  {name:<12} {tuple(value.shape) if value.dim() else value.item()}")


# %% 不存优化器会怎样：三条路，接着训练 30 步
def resume(with_optimizer):
    """从文件里恢复，再接着训练。

    参数:
        with_optimizer (bool): 要不要连优化器的状态一起恢复

    返回:
        list[float]: 后面每步的验证损失
    """
    checkpoint = torch.load(folder / "model_and_optimizer.pth", map_location=device, weights_only=True)
    model = GPTModel(config)
    model.load_state_dict(checkpoint["model_state_dict"])
    # 先有优化器，才能往里填状态；学习率、权重衰减要与原来的相同
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1)
    if with_optimizer:
        optimizer.load_state_dict(checkpoint["optimizer_state_dict"])
    return train(model, optimizer, batches[STEPS_BEFORE:])


# 一批只有 2 个样本，梯度又吵又不准。AdamW 把最近的梯度平均起来，噪声就互相抵消；新的 AdamW 没有这些记忆，
# 头几步照着一两批的噪声，每个权重都迈出整整一个学习率：学到的先被打乱一些，要好多步才补得回来。不报错，只是白白退步。
uninterrupted = train(model, optimizer, batches[STEPS_BEFORE:])
with_optimizer, without_optimizer = resume(True), resume(False)
shown = [step for step in (0, 2, 4, 6, 8, 19, 29) if step < STEPS_AFTER]
print("\n接着训练，验证损失　" + "　".join(f"第 {step + 1:2} 步" for step in shown))
roads = {"没有中断过": uninterrupted, "读回模型和优化器": with_optimizer, "只读回模型": without_optimizer}
for title, losses in roads.items():
    print(f"  {title:　<8}　　" + "　".join(f"{losses[step]:7.3f}" for step in shown))
damage = sum(without_optimizer) / STEPS_AFTER - sum(uninterrupted) / STEPS_AFTER
print(f"只读回模型，这 {STEPS_AFTER} 步的损失比没有中断过平均差 {damage:+.3f}")
# 有 dropout、有打乱时，要与没断过的逐位相同，还得存下随机数的状态和走到了第几批：见 ch05/experiments/exp_resume.py。

# %% weights_only=True：别让文件里的代码跑起来
# .pth 里面是 pickle。pickle 存的不只是数据，还可以是"读的时候请调用这个函数"：函数可以是 print，也可以是删文件。


class Trap:
    """一个无害的陷阱：谁把它从文件里读出来，谁就会执行 print。"""

    def __reduce__(self):
        """告诉 pickle 读的时候调用哪个函数、用什么参数。

        返回:
            tuple: 函数，和它的参数
        """
        return print, ("  （这一行是文件自己打印的：torch.load 替它执行了代码）",)


torch.save({"config": config, "model": Trap()}, folder / "from_internet.pth")
print("\nweights_only=False 读一个来路不明的文件：")
torch.load(folder / "from_internet.pth", weights_only=False)
print("weights_only=True 读同一个文件：")
try:
    torch.load(folder / "from_internet.pth", weights_only=True)
    refused = False
except pickle.UnpicklingError:
    refused = True
print("  拒绝，什么也没执行" if refused else "  没有拒绝")
# PyTorch 2.6 起 weights_only 默认就是 True，但 Intel 芯片的 Mac 只能装到 2.2，那里默认是 False：所以每次都写明。

# %% safetensors：文件里根本没有放代码的地方
# 8 个字节写目录有多长，接着是目录（JSON：名字、类型、形状、位置），剩下的全是数字。公开分享权重，今天大多用它。
save_file(ckpt["model"], folder / "model.safetensors")
raw = (folder / "model.safetensors").read_bytes()
header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
print("\nsafetensors 的目录，其中一项：", {"tok_emb.weight": header["tok_emb.weight"]})
weights = load_file(folder / "model.safetensors")
same = all(torch.equal(weights[name], tensor) for name, tensor in ckpt["model"].items())
print(f"读回来 {len(weights)} 项，与存之前{'逐位相同' if same else '不同'}")
# 它只存张量。优化器的状态里有嵌套的字典和普通的数，存不进去，所以训练中途的检查点仍用 torch.save。

temporary.cleanup()

# %% 这个数字对吗？
print("\n这个数字对吗？")
confirm("读回来的模型，输出与存之前逐位相同", after == 0, "忘了 eval()，或配置与存的时候不同")
confirm(
    f"连优化器一起存，文件约 3 倍大（{size_ratio:.1f} 倍）",
    2.5 < size_ratio < 3.5,
    "优化器还没走过一步，动量还没建立，或换成了没有动量的 SGD",
)
confirm(
    "读回模型和优化器：后面每一步都与没有中断过逐位相同",
    with_optimizer == uninterrupted,
    "优化器的状态没有恢复，或中间多用了随机数",
)
confirm(
    f"只读回模型：起点相同，损失先涨，平均差 {damage:+.3f}",
    without_optimizer[0] == uninterrupted[0] and max(without_optimizer) > without_optimizer[0] and damage > 0.01,
    "两条路用了不同的数据，或批太大、学习率太小，梯度的噪声看不出来",
)
confirm("夹带代码的文件被拒绝", refused, "PyTorch 版本太旧，或没有写 weights_only=True")
confirm("safetensors 存取后逐位相同", same, "存之前转换过数据类型")

# %% 动手改
# 1. 把 config 里的 drop_rate 改成 0.1：读回了模型和优化器，后面的损失还是对不上，自查里有一条变成 ✗。
#    因为 dropout 用的随机数没有接上。
# 2. 把两处 AdamW 换成 SGD：文件是 1.0 倍大，三条路完全相同。SGD 没有记忆，存不存都一样；
#    代价是学得慢，200 步只降到 3.2。
# 3. 把 BATCH_SIZE 改成 64：梯度准了，丢掉优化器的那条路这一次反而更低。
#    丢了不一定更差，但一定不再是同一次训练，结果没法比较。
# 4. 把 loaded = GPTModel(ckpt["config"]) 改成 GPTModel({**ckpt["config"], "n_layers": 1})：
#    报错列出多出来的键 trf_blocks.1.…，这正是配置对不上时的样子。
