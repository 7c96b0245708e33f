"""第 7 章 · 7.7 节　提取回答，存下来

读完你应该能回答：
    1. generate 返回的文本里，哪一段才是回答？为什么按字符数切，而不去找 "### Response:"？
    2. 模型怎么知道说完了？不给 eos_id 会怎样？
    3. 存下来的模型和回答，各留着做什么？

运行：
    python ch07/main/example_05_responses.py        # 先运行 example_04_finetune.py；回答写到 ch07/outputs/
    或在 VS Code / Jupyter 里逐个单元格（# %%）运行，边看边改
    约 40 秒，0.6 GB（2 核 CPU）

形状记号：b 批大小　t 序列长度（词元数）　d 嵌入维度　h 头数　k 每个头的维度（k = d / h）　V 词表大小　n 个数
"""

import json
import os
import sys
import urllib.request
from pathlib import Path

import tiktoken
import torch
import torch.nn as nn
from tqdm import tqdm

# 改这里
MODELS = ["gpt-mini-sft.pth", "example-sft.pth"]  # 用哪个微调好的：总结脚本的训练得久，没有就用上一个讲解脚本的
MAX_NEW_TOKENS = 64  # 书上是 256；自带的数据答案都是短短一句，够用了
DEVICE = torch.device("cpu")  # 有 GPU 可以改成 "mps" 或 "cuda"
URL = "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/ch07/01_main-chapter-code/instruction-data.json"
here = Path(__file__ if "__file__" in globals() else "x").resolve()  # 笔记本里没有 __file__，就从当前文件夹往上找
OUTPUTS = next((folder / "ch07" for folder in here.parents if (folder / "ch07").is_dir()), Path()) / "outputs"


# region 沿用 ch07/main: download_and_load_file, format_input
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

# %% 7.7　① 读回微调好的模型
finetuned = [OUTPUTS / name for name in MODELS if (OUTPUTS / name).exists()]
if not finetuned:
    print("还没有微调好的模型，请先运行 python ch07/main/example_04_finetune.py（约 80 秒）", file=sys.stderr)
    sys.exit(2)
ckpt = torch.load(finetuned[0], map_location="cpu", weights_only=True)
model = GPTModel(ckpt["config"])
model.load_state_dict(ckpt["model"])
model.to(DEVICE)
model.eval()  # 关掉 dropout：同一道题每次都答得一样，分数才有意义
tokenizer = tiktoken.get_encoding("gpt2")

# 数据要与微调时的同一份：测试集是按文件里的次序切出来的，换一份，"没见过的题"就可能是练过的。
path = find_data("instruction-data.json", "instructions.json")
data = download_and_load_file(path, URL)
train_portion, test_portion = int(len(data) * 0.85), int(len(data) * 0.1)
test_data = data[train_portion : train_portion + test_portion]
print(f"【7.7】模型　{finetuned[0]}\n数据　{path}，测试集 {len(test_data)} 条")

# %% ② 截出回答，一步一步
entry = test_data[0]
input_text = format_input(entry)  # 没有写 "### Response:"：训练时它总跟在后面，标题由模型自己接出来
token_ids = generate(
    model=model,
    idx=text_to_token_ids(input_text, tokenizer).to(DEVICE),
    max_new_tokens=MAX_NEW_TOKENS,
    context_size=ckpt["config"]["context_length"],
    eos_id=50256,  # 模型写出结束词元，就是它认为说完了；不给，就一直写满 max_new_tokens 个
)
generated_text = token_ids_to_text(token_ids, tokenizer)
print(f"\n生成的全文，前 {len(input_text)} 个字符是提示词：\n{generated_text!r}")
print(f"切掉提示词：\n{generated_text[len(input_text) :]!r}")
response_text = generated_text[len(input_text) :].replace("### Response:", "").strip()
print(f"去掉标题和两头的空白：\n{response_text!r}")


# %% ③ 写成函数：每条都这样做一遍
def generate_response(model, tokenizer, entry, device, max_new_tokens=256):
    """让模型回答一条指令，截出回答。

    参数:
        model (nn.Module): 微调过的语言模型；应先调用 model.eval()
        tokenizer (tiktoken.Encoding): 分词器
        entry (dict): 有 instruction 和 input
        device (torch.device): 在哪里算
        max_new_tokens (int): 最多写几个词元

    返回:
        str: 回答

    出处: 原书 7.7 节（那里写在循环里）
    """
    input_text = format_input(entry)
    token_ids = generate(
        model=model,
        idx=text_to_token_ids(input_text, tokenizer).to(device),
        max_new_tokens=max_new_tokens,
        context_size=model.pos_emb.weight.shape[0],
        eos_id=50256,  # 写出结束词元就停
    )
    generated_text = token_ids_to_text(token_ids, tokenizer)
    # 生成的文本 = 提示词 + "\n\n### Response:\n" + 回答。按字符数切，不去找标题：指令里也可能写着 "### Response:"。
    return generated_text[len(input_text) :].replace("### Response:", "").strip()


# 看数字之前先看人话：三条就看得出它是会答、会抄，还是在说胡话。测试集的题训练时没有见过，答对才算数。
for entry in test_data[:3]:
    response_text = generate_response(model, tokenizer, entry, DEVICE, MAX_NEW_TOKENS)
    question = entry["instruction"] + (f"　[{entry['input']}]" if entry["input"] else "")
    print(f"\n指令　　　{question}\n参考答案　{entry['output']}\n模型回答　{response_text}")

# %% ④ 回答全部测试题，存成 JSON
# 存下来，打分就不必再生成一遍：生成是最慢的一步，打分的办法却可以换好几种（7.8 节）。
print()
for entry in tqdm(test_data, desc="回答", ncols=80):
    entry["model_response"] = generate_response(model, tokenizer, entry, DEVICE, MAX_NEW_TOKENS)

responses = OUTPUTS / "instruction-data-with-response.json"
part = responses.with_suffix(".part")  # 先写在旁边，写完才改名：中途停下，也不会留下半个文件
with open(part, "w", encoding="utf-8") as file:
    json.dump(test_data, file, indent=4, ensure_ascii=False)  # indent=4：人也要看
part.replace(responses)
print(f"\n回答写到 {responses}，第一条是\n{test_data[0]}")
# 书上到这里才存模型，文件叫 gpt2-medium355M-sft.pth；我们在训练完就存了，免得中途停下白练一场。

# %% 这个数字对吗？
print("\n这个数字对吗？")
saved = json.loads(responses.read_text(encoding="utf-8"))
confirm("存下来再读回来，一字不变", saved == test_data, "写文件时没有用 UTF-8")
prompts = [format_input(entry) for entry in test_data]
same = all(tokenizer.decode(tokenizer.encode(prompt)) == prompt for prompt in prompts)
confirm("提示词编码再解码，一字不变：按字符数切才不会切错", same, "分词器的 decode 丢了东西")
clean = not any(entry["model_response"].startswith(("Below is", "### Response:")) for entry in test_data)
confirm("回答里没有提示词，开头也没有标题", clean, "切的位置不对")

# %% 动手改
# 1. 把 generate_response 里的 eos_id=50256 去掉，看它答完之后又写了什么；慢了几倍？
# 2. 给 test_data[0] 的 instruction 后面加上 "### Response:"，按标题切会切到哪里？
