"""第 7 章 · 7.4–7.5 节　数据加载器，和一个预训练过的模型

读完你应该能回答：
    1. DataLoader 调用凑批的函数时只给它一批样本，device 和最长长度怎么交进去？
    2. 训练集打乱、丢掉凑不满的最后一批，验证集和测试集都不，为什么？
    3. 预训练过的模型，看到一条指令会怎样回答？

运行：
    python ch07/main/example_03_loaders_and_start_model.py
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 4 秒，0.5 GB（2 核 CPU）

形状记号：b 批大小　t 序列长度（词元数）　d 嵌入维度　h 头数　k 每个头的维度（k = d / h）　V 词表大小　n 个数
"""

import json
import os
import sys
import urllib.request
from functools import partial
from pathlib import Path

import tiktoken
import torch
import torch.nn as nn
from torch.utils.data import DataLoader, Dataset

# 改这里
# 书上用 3.55 亿参数的 GPT-2：124M 见识不够，回答常常文不对题。先 python ch05/main/gpt_download.py --size 355M，
# 再换成 "gpt2-355M.pth"。"gpt_mini.pth" 是第 5 章自己训练的，只读过一篇小说，用来走通每一步。
WEIGHTS = "gpt_mini.pth"
BATCH_SIZE = 8  # 书上的取值；换一个数，每一批就不同，数字也与书上不同
DEVICE = torch.device("cpu")  # 有 GPU 可以改成 "mps" 或 "cuda"
URL = "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/ch07/01_main-chapter-code/instruction-data.json"


# region 沿用 ch07/main: download_and_load_file, format_input, InstructionDataset, custom_collate_fn
def download_and_load_file(file_path, url):
    """读指令数据；file_path 不存在，就先从 url 下载。（详解见 ch07/main/example_01_dataset_and_prompt.py）"""
    if not os.path.exists(file_path):
        with urllib.request.urlopen(url, timeout=30) as response:
            text_data = response.read().decode("utf-8")
        with open(file_path, "w", encoding="utf-8") as file:
            file.write(text_data)
    advice = f"；全部问题和转换的办法：python setup/check_data.py {file_path}"
    try:
        with open(file_path, encoding="utf-8-sig") as file:
            data = json.load(file)
    except (ValueError, RecursionError) as error:
        place = f"（第 {error.lineno} 行第 {error.colno} 个字符）" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f"{file_path} 不是 UTF-8 编码的 JSON{place}{advice}") from None
    if not isinstance(data, list) or not data:
        raise ValueError(f"{file_path} 里应是一个列表，至少一条{advice}")
    for number, entry in enumerate(data, start=1):
        texts = [entry.get(key) for key in ("instruction", "input", "output")] if isinstance(entry, dict) else [None]
        if not all(isinstance(text, str) and "<|endoftext|>" not in text for text in texts) or not texts[0].strip():
            wanted = "instruction（不能是空的）、input、output 三段文字，不含 <|endoftext|>"
            raise ValueError(f"{file_path} 的第 {number} 条应有 {wanted}{advice}")
        whole = json.dumps(entry, ensure_ascii=False)
        if whole.encode("utf-8", "ignore").decode("utf-8") != whole:
            raise ValueError(f"{file_path} 的第 {number} 条有半个表情符号（孤立的代理项）{advice}")
    return data


def format_input(entry):
    """一条数据 → Alpaca 格式的提示词，到回答之前为止。（详解见 ch07/main/example_01_dataset_and_prompt.py）"""
    instruction_text = (
        f"Below is an instruction that describes a task. "
        f"Write a response that appropriately completes the request."
        f"\n\n### Instruction:\n{entry['instruction']}"
    )
    input_text = f"\n\n### Input:\n{entry['input']}" if entry["input"] else ""
    return instruction_text + input_text


class InstructionDataset(Dataset):
    """指令数据集：提示词接上回答，整段变成词元编号。长短不一，凑批时再填充。（详解见 ch07/main/example_02_collate.py）"""

    def __init__(self, data, tokenizer):
        self.data = data
        self.encoded_texts = []
        for entry in data:
            instruction_plus_input = format_input(entry)
            response_text = f"\n\n### Response:\n{entry['output']}"
            full_text = instruction_plus_input + response_text
            self.encoded_texts.append(tokenizer.encode(full_text))

    def __getitem__(self, index):
        return self.encoded_texts[index]

    def __len__(self):
        return len(self.data)


def custom_collate_fn(batch, pad_token_id=50256, ignore_index=-100, allowed_max_length=None, device="cpu"):
    """把长短不一的几条凑成一批，同时做好目标。（详解见 ch07/main/example_02_collate.py）"""
    batch_max_length = max(len(item) + 1 for item in batch)
    inputs_lst, targets_lst = [], []
    for item in batch:
        new_item = item.copy()
        new_item += [pad_token_id]
        padded = new_item + [pad_token_id] * (batch_max_length - len(new_item))
        inputs = torch.tensor(padded[:-1])  # (t,)
        targets = torch.tensor(padded[1:])  # (t,)
        mask = targets == pad_token_id
        indices = torch.nonzero(mask).squeeze()  # (n,) 或 ()
        if indices.numel() > 1:
            targets[indices[1:]] = ignore_index
        if allowed_max_length is not None:
            inputs = inputs[:allowed_max_length]
            targets = targets[:allowed_max_length]
        inputs_lst.append(inputs)
        targets_lst.append(targets)
    return torch.stack(inputs_lst).to(device), torch.stack(targets_lst).to(device)  # (b, t)，(b, t)


# endregion


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


# region 沿用 ch05/main: text_to_token_ids, token_ids_to_text, generate
def text_to_token_ids(text, tokenizer):
    """文本 → 模型的输入，(1, t) 的词元编号。（详解见 ch05/main/example_01_loss.py）"""
    encoded = tokenizer.encode(text, allowed_special={"<|endoftext|>"})
    return torch.tensor(encoded).unsqueeze(0)  # (1, t)


def token_ids_to_text(token_ids, tokenizer):
    """模型的输出 → 文本。（详解见 ch05/main/example_01_loss.py）"""
    return tokenizer.decode(token_ids.squeeze(0).tolist())


def generate(model, idx, max_new_tokens, context_size, temperature=0.0, top_k=None, eos_id=None):
    """逐个生成词元，可以调温度、限制 top-k，遇到结束词元就停。（详解见 ch05/main/example_03_decoding.py）"""
    if not temperature >= 0:
        raise ValueError(f"温度不能是 {temperature}：0 表示贪心，越大越随意")
    if top_k is not None and not 1 <= top_k <= model.out_head.out_features:
        raise ValueError(f"top_k 应在 1 到 {model.out_head.out_features}（词表大小）之间，不能是 {top_k}")
    finished = torch.zeros(len(idx), 1, dtype=torch.bool, device=idx.device)  # (b, 1)
    for _ in range(max_new_tokens):
        idx_cond = idx[:, -context_size:]  # (b, t)
        with torch.no_grad():
            logits = model(idx_cond)  # (b, t, V)
        logits = logits[:, -1, :]  # (b, V)
        if top_k is not None:
            top_logits, _ = torch.topk(logits, top_k)  # (b, top_k)
            min_val = top_logits[:, -1:]  # (b, 1)
            logits = torch.where(logits < min_val, -torch.inf, logits)  # (b, V)
        if temperature > 0.0:
            logits = logits / temperature
            logits = logits - logits.max(dim=-1, keepdim=True).values  # (b, V)
            probs = torch.softmax(logits, dim=-1)  # (b, V)
            idx_next = torch.multinomial(probs, num_samples=1)  # (b, 1)
        else:
            idx_next = torch.argmax(logits, dim=-1, keepdim=True)  # (b, 1)
        if eos_id is not None:
            idx_next = torch.where(finished, eos_id, idx_next)  # (b, 1)
            finished = idx_next == eos_id  # (b, 1)
            if finished.all():
                break
        idx = torch.cat((idx, idx_next), dim=1)  # (b, t + 1)
    return idx


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

os.environ["TIKTOKEN_CACHE_DIR"] = str(find_data("tiktoken"))  # GPT-2 的词表由 setup/run.sh 放好，不联网


# region 沿用 setup/self_check.py: confirm
def confirm(claim, ok, hint):
    """「这个数字对吗？」：打印一条自查结果，不对时给出常见原因。（详解见 setup/self_check.py）"""
    print(f"  ✓ {claim}" if ok else f"  ✗ {claim}　常见原因：{hint}")
    return ok


# endregion


# %% 7.4　① 训练之前，先看每一条学得到东西吗
def check_trainable(data, tokenizer, context_length, batch_size, path):
    """凑得出一批吗，有回答可学吗，每一条的回答都留得下吗；不行就说是第几条，不训练。

    参数:
        data (list[dict]): 指令数据
        tokenizer (tiktoken.Encoding): 分词器
        context_length (int): 模型最多看多少个词元，更长的截掉
        batch_size (int): 一批几条
        path (Path): 数据从哪个文件来，报错时要说

    异常:
        ValueError: 条数太少，回答全是空的，或有一条的提示词就占满了上下文
    """
    advice = f"；全部问题和转换的办法：python setup/check_data.py {path} --context {context_length}"
    if int(len(data) * 0.85) < batch_size or int(len(data) * 0.1) < 1:
        raise ValueError(f"{path} 只有 {len(data)} 条，切成三份，凑不出一批训练数据（{batch_size} 条），或没有测试集{advice}")
    if not any(entry["output"].strip() for entry in data):
        raise ValueError(f"{path} 里每一条的 output 都是空的，没有回答可学{advice}")
    for number, entry in enumerate(data, start=1):
        prompt_length = len(tokenizer.encode(format_input(entry) + "\n\n### Response:\n"))
        # 截断从尾巴截起，而回答就在尾巴上：提示词占满了，回答一个词元也不剩，学的只是提示词，损失照样在降。
        if prompt_length > context_length:
            raise ValueError(f"{path} 的第 {number} 条，提示词就有 {prompt_length} 个词元，回答全被截掉{advice}")


# %% ② 凑批的函数：先填好两个参数
# DataLoader 只会给它一批样本；device 和最长长度用 partial 先填好，就得到一个只要一个参数的新函数。
# 凑批时就搬到设备上，与留到训练循环里再搬没有两样：DataLoader 的 num_workers 是 0，凑批本来就在主进程里。
# 开了子进程（num_workers > 0）不要这样写：PyTorch 不建议在子进程里造 CUDA 张量，应当留在 CPU 上，到训练循环里再搬。
# 这里用 0：macOS 和 Windows 上开子进程常出问题；数据很小，0 就够快。
customized_collate_fn = partial(custom_collate_fn, device=DEVICE, allowed_max_length=1024)  # 1024 是 GPT-2 的上下文长度

# %% ③ 三个加载器
path = find_data("instruction-data.json", "instructions.json")
tokenizer = tiktoken.get_encoding("gpt2")
data = download_and_load_file(path, URL)
check_trainable(data, tokenizer, 1024, BATCH_SIZE, path)
train_portion, test_portion = int(len(data) * 0.85), int(len(data) * 0.1)
train_data = data[:train_portion]
test_data = data[train_portion : train_portion + test_portion]
val_data = data[train_portion + test_portion :]
print(f"【7.4】{path}　{len(data)} 条")
# 截断只看长短，不看内容：离上限还有多远，训练之前就该知道。自己的数据，用 setup/check_data.py 看，它会画出来。
longest_prompt = max(len(tokenizer.encode(format_input(entry))) for entry in data)
print(f"最长的提示词 {longest_prompt} 个词元，上限 1024：每一条的回答都留得下")
# 换成 mini，上限只有 256。提示词里的开场白、标题就要四十来个，留给题目和回答的两百出头，长文章的摘要、翻译就放不下了。
# 放不下有三个办法：去掉那几条，把题目改短，换上下文更长的模型。哪一个都好过不知道。

torch.manual_seed(123)  # 打乱次序用的随机数从这里取起，每一批是哪几条，由种子和之前取过几次决定

train_dataset = InstructionDataset(train_data, tokenizer)
# drop_last=True：最后一批凑不满就丢掉。只有一两条的批，梯度全听它们的，会把模型带偏。
train_loader = DataLoader(train_dataset, BATCH_SIZE, shuffle=True, drop_last=True, collate_fn=customized_collate_fn)
# 验证集和测试集不打乱、不丢弃：要量的是全部，次序也要每次相同，前后两次的损失才好比。
val_dataset = InstructionDataset(val_data, tokenizer)
val_loader = DataLoader(val_dataset, BATCH_SIZE, shuffle=False, drop_last=False, collate_fn=customized_collate_fn)
test_dataset = InstructionDataset(test_data, tokenizer)
test_loader = DataLoader(test_dataset, BATCH_SIZE, shuffle=False, drop_last=False, collate_fn=customized_collate_fn)

# 走一遍，看看每一批的形状。走一遍也会用掉随机数：再走一遍，次序就不同了。
lengths = []
for inputs, targets in train_loader:
    lengths.append(inputs.shape[1])
print(f"每批 {BATCH_SIZE} 条：训练集 {len(lengths)} 批，验证集 {len(val_loader)} 批，测试集 {len(test_loader)} 批")
print(f"训练集前四批长 {lengths[:4]}，最后一批长 {lengths[-1]}；最短 {min(lengths)}，最长 {max(lengths)}")
# 每批只填到自己最长的那条，比都填到全部数据里最长的省多少，看数据的长短有多悬殊。
longest = max(len(ids) for ids in train_dataset)
print(f"一轮 {BATCH_SIZE * sum(lengths):,} 个位置；每批都填到 {longest} 的话，要 {BATCH_SIZE * longest * len(lengths):,} 个")

# 看一条真的：输入的开头是开场白 Below is an instruction，结尾是填充；目标里只留第一个 50256。
print(f"\n最后一批的 inputs[0]\n{inputs[0]}\n最后一批的 targets[0]\n{targets[0]}")

# %% 7.5　① 读入预训练过的模型
ckpt = torch.load(find_data(WEIGHTS), map_location="cpu", weights_only=True)
config = ckpt["config"] | {"drop_rate": 0.0}  # 与书上相同，微调时不用 dropout；权重的形状不受影响
model = GPTModel(config)
model.load_state_dict(ckpt["model"])
model.to(DEVICE)
model.eval()
print(f"\n【7.5】{WEIGHTS}　{config['n_layers']} 层，{config['emb_dim']} 维，上下文长度 {config['context_length']}")

# %% ② 还没微调的模型，怎样对待一条指令
torch.manual_seed(123)
input_text = format_input(val_data[0])
print(f"\n{input_text}\n")
token_ids = generate(
    model=model,
    idx=text_to_token_ids(input_text, tokenizer).to(DEVICE),
    max_new_tokens=35,
    context_size=config["context_length"],
    eos_id=50256,
)
generated_text = token_ids_to_text(token_ids, tokenizer)

# generate 返回的是"提示词 + 新写的"。提示词原样在最前面，按字符数切掉，剩下的就是回答。
response_text = generated_text[len(input_text) :].strip()
print(f"参考答案　{val_data[0]['output']}\n模型回答　{response_text}")
# 模型答的是什么，与它读过什么书有关：355M 会照着格式接着写，把句子原样抄一遍，再编出一条新的指令；
# mini 连格式都没见过，只会接着讲它背过的那篇小说。两者缺的是同一样东西：没有人教过它，指令后面该跟着回答。

# %% 这个数字对吗？
print("\n这个数字对吗？")
confirm("每批各填各的：长短不一，都不超过最长的那条", len(set(lengths)) > 1 and max(lengths) <= longest, "填到了固定的长度")
kept = targets != -100  # (b, t)
shifted = torch.equal(inputs[:, 1:][kept[:, :-1]], targets[:, :-1][kept[:, :-1]])
confirm("目标是输入右移一位，-100 的位置除外", shifted, "错开的方向反了")
confirm("生成的文本以提示词开头，才能按字符数切", generated_text.startswith(input_text), "编码再解码，提示词变了样")
book_data = path.name == "instruction-data.json" and len(data) == 1100 and BATCH_SIZE == 8
if book_data:
    sizes = [len(lengths), *lengths[:4], lengths[-1]]
    hint = "种子不同，或建加载器之前用过随机数"
    confirm("与书上相同：116 批，前四批长 61、76、73、68，最后一批 69", sizes == [116, 61, 76, 73, 68, 69], hint)
    confirm("最后一批的 inputs[0] 以 21106, 318, 281, 12064 开头", inputs[0, :4].tolist() == [21106, 318, 281, 12064], hint)
    tail = targets[0, -11:].tolist()
    confirm("targets[0] 的结尾是一个 50256 和九个 -100", tail == [13, 50256] + [-100] * 9, "第一个 50256 没有留着")
if book_data and WEIGHTS == "gpt2-355M.pth":
    copied = response_text.startswith("The chef cooks the meal every day.")
    confirm("与书上相同：模型把句子抄了一遍", copied, "某个权重装错了地方")

# %% 动手改
# 1. 把训练集的 shuffle=True 改成 False：最后一批的 inputs[0] 变了，想想是数据里的第几条。
# 2. 把 allowed_max_length 改成 40：开场白加标题就快 40 个了，看最后一批还剩下多少回答。
# 3. 把 max_new_tokens 改成 100，看它会不会自己停下来。
