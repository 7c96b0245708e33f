"""手敲练习 · 第 7 章　每个组件的任务、检查和典型错误

格式与怎样添加，见 setup/practice.md。检查函数只拿到一个 ns：被检查的文件里定义的一切，用 ns.名字 取。
"""

import contextlib
import io
import json
from types import SimpleNamespace
from unittest import mock


def entries():
    """两条指令数据；每次都是新的，被检查的代码改了它们也不碍事。"""
    return [{"instruction": "What is the opposite of hot?", "input": "", "output": "Cold."}, {"instruction": "Spell the word.", "input": "Ocasion", "output": "Occasion."}]


def book_batch():
    """书上的三条假样本，每次都是新的。"""
    return [0, 1, 2, 3, 4], [5, 6], [7, 8, 9]


class CharTokenizer:
    """一个字符一个词元的假分词器。"""

    chars = "\n" + "".join(map(chr, range(32, 127)))  # 换行和 95 个看得见的英文字符，编号 0–95

    def encode(self, text, allowed_special=()):
        """文本 → 编号。"""
        return [self.chars.index(char) for char in text]

    def decode(self, ids):
        """编号 → 文本。"""
        return "".join(self.chars[i] for i in ids)


@contextlib.contextmanager
def swapped(function, **others):
    """暂时换掉一个函数用到的全局名字，用完换回来。"""
    names = function.__globals__
    before = {name: names[name] for name in others if name in names}
    names.update(others)
    try:
        yield
    finally:
        for name in others:
            del names[name]
        names.update(before)


def quietly(work):
    """运行一下，不让进度条和打印的内容露出来。"""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return work()


# ---- format_input、InstructionDataset、split_data ----
def prompt_text(ns):
    """提示词一字不差。"""
    multi = {"instruction": "List two.\nUse commas.", "input": "a\nb", "output": "x"}
    return {"没有 input": ns.format_input(entries()[0]), "有 input": ns.format_input(entries()[1]), "有几行": ns.format_input(multi), "只看这两项": ns.format_input({"instruction": "Hi", "input": ""})}


def dataset_texts(ns):
    """每条样本解码之后的文本。"""
    dataset = ns.InstructionDataset(entries(), CharTokenizer())
    return {"样本数": len(dataset), "样本": [CharTokenizer().decode(dataset[i]) for i in range(len(dataset))]}


def dataset_kinds(ns):
    """样本是普通的列表，长短不一；分词只做一次。"""
    calls = []
    tokenizer = SimpleNamespace(encode=lambda text, **_: calls.append(text) or [1] * len(text))
    dataset = ns.InstructionDataset(entries(), tokenizer)
    lengths = [len(dataset[i]) for i in (0, 1, 0)]
    return {"长度": lengths, "类型": type(dataset[0]).__name__, "分词的次数": len(calls), "原来的数据": dataset.data}


def split_parts(ns):
    """三份各是哪些，不重不漏。"""
    result = {}
    for n in (20, 33, 110):
        parts = ns.split_data(list(range(n)))
        result[f"{n} 条（训练，验证，测试）"] = [[part[0], part[-1], len(part)] for part in parts]
        result[f"{n} 条，不重不漏"] = sorted(sum(parts, [])) == list(range(n))
    return result


# ---- 三个凑批的函数 ----
def draft_values(collate):
    """书上的三条、一条、带别的填充词元。"""
    return {"书上的三条": collate(book_batch()), "只有一条": collate(([4, 2],)), "填充词元是 99": collate(book_batch(), pad_token_id=99)}


def draft_1_values(ns):
    """第一稿的输入。"""
    return draft_values(ns.custom_collate_draft_1)


def draft_2_values(ns):
    """第二稿的输入和目标。"""
    return draft_values(ns.custom_collate_draft_2)


def kept(collate):
    """原来的样本没有改动；结果放到指定的设备上（用只记形状的假设备 meta 来查）。"""
    batch = [[1, 2, 3], [4]]
    collate(batch)
    on_meta = collate([[1, 2, 3], [4]], device="meta")
    tensors = on_meta if isinstance(on_meta, tuple) else (on_meta,)
    return {"凑批之后，原来的样本": batch, "设备": [tensor.device.type for tensor in tensors]}


def draft_1_kept(ns):
    """第一稿：原来的样本与设备。"""
    return kept(ns.custom_collate_draft_1)


def draft_2_kept(ns):
    """第二稿：原来的样本与设备。"""
    return kept(ns.custom_collate_draft_2)


def collate_values(ns):
    """定稿：书上的三条、只有一条、一样长。"""
    return draft_values(ns.custom_collate_fn) | {"一样长": ns.custom_collate_fn(([1, 2], [3, 4]))}


def collate_options(ns):
    """ignore_index 和 allowed_max_length。"""
    return {"ignore_index 是 -1": ns.custom_collate_fn(book_batch(), ignore_index=-1), "最长 3 个": ns.custom_collate_fn(book_batch(), allowed_max_length=3), "最长 9 个": ns.custom_collate_fn(book_batch(), allowed_max_length=9)}


def collate_kept(ns):
    """定稿：原来的样本与设备。"""
    return kept(ns.custom_collate_fn)


HEADER_IDS = [198, 198, 21017, 18261, 25, 198]  # "\n\n### Response:\n" 在 GPT-2 词表里的编号


def masked_values(ns):
    """只有回答和一个结束词元算损失；输入不变。"""
    batch = ([5, 6, *HEADER_IDS, 7, 8], [9, *HEADER_IDS, 3])
    inputs, targets = ns.masked_collate_fn(batch)
    return {"输入": inputs, "目标": targets, "算损失的位置数": (targets != -100).sum(dim=1)}


def masked_edges(ns):
    """没有标题、标题在开头、标题出现两次、换一个 ignore_index、截断。"""
    return {
        "没有标题": ns.masked_collate_fn(([5, 6, 7],)),
        "标题在开头": ns.masked_collate_fn(([*HEADER_IDS, 7],)),
        "标题出现两次": ns.masked_collate_fn(([5, *HEADER_IDS, 7, *HEADER_IDS, 8],)),
        "ignore_index 是 -1": ns.masked_collate_fn(([5, *HEADER_IDS, 7], [1]), ignore_index=-1),
        "最长 9 个": ns.masked_collate_fn(([5, *HEADER_IDS, 7, 8, 9, 1, 2],), allowed_max_length=9),
    }


# ---- generate_response ----
def respond(ns, reply, device="cpu", **options):
    """用假的 generate 回答一条：提示词后面接上 reply；返回回答，和 generate 收到的东西。"""
    import torch

    calls, tokenizer = [], CharTokenizer()

    def spy(model, idx, max_new_tokens, context_size, temperature=0.0, top_k=None, eos_id=None):
        calls.append({"形状": list(idx.shape), "设备": idx.device.type, "最多写几个": max_new_tokens, "上下文长度": context_size, "温度": float(temperature), "结束符": eos_id})
        prompt = ns.format_input(entries()[1]) + options.get("header", "")
        return torch.tensor([tokenizer.encode(prompt + reply)])

    model = SimpleNamespace(pos_emb=SimpleNamespace(weight=torch.zeros(32, 4)))
    with swapped(ns.generate_response, generate=spy):
        return ns.generate_response(model, tokenizer, entries()[1], torch.device(device), **options), calls


def response_text(ns):
    """截出的回答。"""
    replies = {"有标题": "\n\n### Response:\nOccasion. \n", "没有标题": " Occasion.", "什么也没写": "", "回答有两行": "\n\n### Response:\nOne\nTwo"}
    result = {name: respond(ns, reply)[0] for name, reply in replies.items()}
    return result | {"标题写在提示词里": respond(ns, "Occasion.\n", header="\n\n### Response:\n")[0]}


def response_call(ns):
    """交给 generate 的东西。"""
    return {"默认": respond(ns, "x")[1], "最多 7 个，在 meta 上": respond(ns, "x", device="meta", max_new_tokens=7)[1], "带标题": respond(ns, "x", header="\n\n### Response:\n")[1]}


# ---- normalize、score_responses ----
def normalized(ns):
    """抹平大小写、标点、空白，留下连字符。"""
    return {text: ns.normalize(text) for text in ["The Answer.", "  two   words\n", "well-known, isn't it?", "3.14", "", "你好，World！"]}


def scored(ns):
    """一字不差的条数、抹平之后相同的条数、按规则分的表。"""
    train = [{"rule": "反义词", "item": "hot", "output": "Cold."}, {"rule": "复数", "item": "mouse", "output": "Mice."}]
    test = [
        {"rule": "反义词", "item": "hot", "output": "Cold.", "model_response": "Cold."},
        {"rule": "反义词", "item": "big", "output": "Small.", "model_response": "small"},
        {"rule": "反义词", "item": "hot", "output": "Cold.", "model_response": "Cool."},
        {"rule": "复数", "item": "hot", "output": "Hots.", "model_response": "hots"},
    ]
    exact, same, table = ns.score_responses(test, train)
    return {"一字不差": exact, "抹平之后相同": same, "表": {f"{rule}，{'问过' if seen else '没问过'}": list(counts) for (rule, seen), counts in table.items()}}


def scored_plain(ns):
    """没有 rule 和 item 的数据（如原书的）：看答案在训练集里出现过没有。"""
    train = [{"output": "The sky is blue."}]
    test = [{"output": "the sky is blue", "model_response": "The sky is blue!"}, {"output": "Grass is green.", "model_response": ""}]
    exact, same, table = ns.score_responses(test, train)
    return {"一字不差": exact, "抹平之后相同": same, "表": {f"{'问过' if seen else '没问过'}": list(counts) for (_, seen), counts in table.items()}}


# ---- query_model、generate_model_scores ----
def ask(ns, lines=(), error=None, **options):
    """用假的 urlopen 问一句：返回回答（拒绝时是报错的话），和发出去的请求。"""
    calls = []

    def urlopen(request, timeout=None):
        calls.append({"网址": request.full_url, "方法": request.get_method(), "类型": request.get_header("Content-type"), "内容是字节": isinstance(request.data, bytes), "内容": json.loads(request.data), "等几秒": timeout})
        if error:
            raise error
        return contextlib.nullcontext(iter(lines))

    with swapped(ns.query_model, urlopen=urlopen), mock.patch("urllib.request.urlopen", urlopen):
        try:
            return ns.query_model("How are you?", url="http://localhost:1/api/chat", **options), calls
        except ValueError as problem:
            return problem, calls


def line(content, done=False):
    """Ollama 发来的一行。"""
    return json.dumps({"message": {"role": "assistant", "content": content}, "done": done}).encode() + b"\n"


def query_answers(ns):
    """把一行一行的片段接起来，到 done 为止。"""
    lines = [line("Fi"), line("ne"), line(", 谢谢"), line("", done=True), line("多余的")]
    return {"几段": ask(ns, lines)[0], "只有一段": ask(ns, [line("85", done=True)])[0]}


def query_request(ns):
    """发出去的请求。"""
    return {"默认": ask(ns, [line("ok", True)])[1], "换个模型": ask(ns, [line("ok", True)], model="phi3", timeout=7)[1]}


def query_errors(ns):
    """出错时是 ValueError；服务器的原话、该怎么办都写在里面。"""
    from urllib.error import HTTPError, URLError

    missing = HTTPError("http://localhost:1/api/chat", 404, "Not Found", {}, io.BytesIO(b'{"error": "no such model"}'))
    halfway = [line("Fi"), b'{"error": "out of memory"}\n']
    problems = {
        "没有这个模型": (ask(ns, error=missing, model="phi3")[0], ("no such model", "ollama pull phi3")),
        "连不上": (ask(ns, error=URLError(ConnectionRefusedError(111, "refused")))[0], ("ollama serve",)),
        "生成到一半出错": (ask(ns, halfway)[0], ("out of memory",)),
        "话没说完就断了": (ask(ns, [line("Fi")])[0], ()),
        "不是 JSON": (ask(ns, [b"<html>\n"])[0], ()),
    }
    return {name: [type(problem).__name__, *(f"说了 {word}" if word in str(problem) else f"没有说 {word}" for word in words)] for name, (problem, words) in problems.items()}


def rated():
    """四条要打分的回答。"""
    return [entry | {"model_response": reply} for entry, reply in zip([*entries(), *entries()], ["Warm.", "Occasion.", "Cold", "Ocean."])]


def rate(ns, replies, **options):
    """用假的 query_model 打分：返回分数和每一次问的话。"""
    calls, replies = [], iter(replies)

    def spy(prompt, model="llama3", url="", timeout=120):
        calls.append((prompt, model, url, timeout))
        return next(replies)

    with swapped(ns.generate_model_scores, query_model=spy):
        return quietly(lambda: ns.generate_model_scores(rated(), "model_response", **options)), calls


def rate_scores(ns):
    """分数；不是整数的不算。"""
    return {"都是整数": rate(ns, ["85", "100", " 0 ", "7\n"])[0], "有几条不是": rate(ns, ["85", "Score: 90", "8.5", ""])[0]}


def rate_prompts(ns):
    """问裁判的话里有什么。"""
    _, calls = rate(ns, ["1", "2", "3", "4"], model="phi3", url="http://u/api/chat", timeout=7)
    found = []
    for entry, (prompt, *_) in zip(rated(), calls):
        pieces = {"题目和输入": ns.format_input(entry), "参考答案": f"`{entry['output']}`", "要打分的回答": f"`{entry['model_response']}`", "只回一个整数": "integer number only", "0 到 100": "0 to 100"}
        found.append([name for name, piece in pieces.items() if piece in prompt])
    return {"每次问的话里都有": found, "裁判、网址、等几秒": [call[1:] for call in calls]}


COMPONENTS = [
    dict(
        name="format_input",
        title="指令的提示词",
        section="7.2",
        source="ch07/main/gpt_instruction_finetuning.py",
        parts=["format_input"],
        needs=[],
        extra={},
        task="写一个函数 format_input(entry)，entry 有 instruction 和 input，返回 Alpaca 格式的提示词："
        "「Below is an instruction that describes a task. Write a response that appropriately completes the request.」，空一行，「### Instruction:」，换行，指令；input 不是空的时候，再空一行，「### Input:」，换行，input。到此为止，不含回答，末尾也没有换行。",
        blanks=["entry['instruction']", 'f"\\n\\n### Input:\\n{entry[\'input\']}"', 'entry["input"]', "instruction_text + input_text"],
        cases=[("提示词", prompt_text)],
        mutants=[
            (' if entry["input"] else ""', "", "input 是空的时候，「### Input:」这个标题也写上了；空的应当整段省略。"),
            ("describes a task. ", "describes a task.", "两句话之间少了一个空格：Python 会把相邻的字符串直接接起来，空格要自己写。"),
            ("\\n\\n### Instruction", "\\n### Instruction", "标题前面少空了一行。"),
            ("### Instruction:\\n", "### Instruction: ", "标题后面没有换行，指令跟在了同一行。"),
            ("instruction_text + input_text", "input_text + instruction_text", "input 放到了指令的前面。"),
            ("instruction_text + input_text", 'instruction_text + input_text + "\\n\\n### Response:\\n"', "多写了回答的标题：这里只到回答之前为止，标题由别处接上，写两遍就重了。"),
        ],
    ),
    dict(
        name="split_data",
        title="训练、验证、测试",
        section="7.2",
        source="ch07/main/gpt_instruction_finetuning.py",
        parts=["split_data"],
        needs=[],
        extra={},
        task="写一个函数 split_data(data)，按文件里的次序切，不打乱：开头的 85% 是训练集，接着的 10% 是测试集，剩下的是验证集，条数用 int 取整；按（训练，验证，测试）的次序返回。",
        blanks=["int(len(data) * 0.85)", "int(len(data) * 0.1)", "data[train_portion : train_portion + test_portion]", "data[train_portion + test_portion :]", "train_data, val_data, test_data"],
        cases=[("三份", split_parts)],
        mutants=[
            ("return train_data, val_data, test_data", "return train_data, test_data, val_data", "返回的次序不对：切的时候测试集在前，返回的时候验证集在前，次序弄混就拿测试集去挑模型了。"),
            ("data[train_portion + test_portion :]", "data[train_portion + test_portion : train_portion + test_portion + int(len(data) * 0.05)]", "验证集也用 int 取整，末尾几条哪一份都不要，丢掉了；应当把剩下的全给它。"),
            ("data[train_portion : train_portion + test_portion]", "data[train_portion:]", "测试集一直到最后，把验证集也包括进去了。"),
            ("data[train_portion : train_portion + test_portion]", "data[:test_portion]", "测试集取的是开头，那些正是训练集里的：拿学过的题来考，成绩没有意义。"),
            ("len(data) * 0.1)", "len(data) * 0.15)", "测试集取成了 15%，验证集什么也不剩；三份是 85%、10%、5%。"),
        ],
    ),
    dict(
        name="InstructionDataset",
        title="指令数据集",
        section="7.3",
        source="ch07/main/gpt_instruction_finetuning.py",
        parts=["InstructionDataset"],
        needs=["format_input"],
        extra={},
        task="写一个 Dataset 的子类 InstructionDataset(data, tokenizer)：每条把 format_input(entry)、标题 \"\\n\\n### Response:\\n\" 和 entry[\"output\"] 接起来，用 tokenizer.encode 变成编号，提前全部做好，存成 self.encoded_texts；原来的数据存成 self.data。第 index 个样本就是那个编号列表，长短不一。",
        blanks=["format_input(entry)", 'f"\\n\\n### Response:\\n{entry[\'output\']}"', "instruction_plus_input + response_text", "self.encoded_texts[index]", "len(self.data)"],
        cases=[("文本", dataset_texts), ("类型与次数", dataset_kinds)],
        mutants=[
            ("tokenizer.encode(instruction_plus_input + response_text)", "tokenizer.encode(instruction_plus_input)", "只有提示词，没有回答，模型学不到该怎样回答。"),
            ("tokenizer.encode(instruction_plus_input + response_text)", "tokenizer.encode(response_text)", "只有回答，没有提示词，模型不知道在回答什么。"),
            ('f"\\n\\n### Response:\\n{entry[\'output\']}"', "entry['output']", "少了「### Response:」这个标题：模型分不清指令到哪里为止，也不知道什么时候该它说话。"),
            ("\\n\\n### Response:\\n{", "\\n\\n### Response: {", "标题后面没有换行，与生成时的提示词对不上。"),
            ("instruction_plus_input = format_input(entry)", "instruction_plus_input = entry['instruction']", "没有用 format_input：少了开头那两句话和标题，input 也丢了。"),
            ("return self.encoded_texts[index]", "return self.data[index]", "返回的是原来的字典，不是编号。"),
        ],
    ),
    dict(
        name="custom_collate_draft_1",
        title="凑批第一稿：补齐",
        section="7.3",
        source="ch07/main/example_02_collate.py",
        parts=["custom_collate_draft_1"],
        needs=[],
        extra={},
        task="写一个函数 custom_collate_draft_1(batch, pad_token_id=50256, device=\"cpu\")，batch 是几条编号列表。每条复制一份，末尾加一个 pad_token_id，再补到这一批里最长的那么长（最长的也加了一个）；去掉最后一个，变成张量；叠成 (b, t)，放到 device 上返回。不要改动原来的列表。",
        blanks=["len(item) + 1 for item in batch", "item.copy()", "[pad_token_id] * (batch_max_length - len(new_item))", "padded[:-1]", "torch.stack(inputs_lst).to(device)"],
        cases=[("数值", draft_1_values), ("原来的样本与设备", draft_1_kept)],
        mutants=[
            ("item.copy()", "item", "没有复制：+= 会改动原来的列表，每过一轮，样本就多出一个结束词元。"),
            ("padded[:-1]", "padded", "没有去掉多留的那一格，输入比书上长了一个。"),
            ("[pad_token_id] * (batch_max_length - len(new_item))", "[0] * (batch_max_length - len(new_item))", "用 0 填充了：0 号是一个真的词元，应当用 pad_token_id。"),
            ("new_item + [pad_token_id] * (batch_max_length - len(new_item))", "[pad_token_id] * (batch_max_length - len(new_item)) + new_item", "填充在了前面；GPT 的位置从左数起，填充应在末尾。"),
            ("len(item) + 1 for item in batch", "len(item) for item in batch", "忘了给结束词元留一格：最长的那条加上它之后，比补到的长度还多一个，各条长短不一，叠不起来。"),
            ("max(len(item) + 1 for item in batch)", "1024", "补到了固定的长度：每批只要补到这一批里最长的，短的批就短，省下许多白算的填充。"),
            (".to(device)", "", "没有放到指定的设备上。"),
        ],
    ),
    dict(
        name="custom_collate_draft_2",
        title="凑批第二稿：目标",
        section="7.3",
        source="ch07/main/example_02_collate.py",
        parts=["custom_collate_draft_2"],
        needs=[],
        extra={},
        task="写一个函数 custom_collate_draft_2(batch, pad_token_id=50256, device=\"cpu\")：像第一稿那样补齐（每条末尾加一个 pad_token_id，补到最长的再加一个），去掉最后一个是输入，去掉第一个是目标；返回（输入，目标），都是 (b, t)，放到 device 上。不要改动原来的列表。",
        blanks=["item.copy()", "[pad_token_id] * (batch_max_length - len(new_item))", "padded[:-1]", "padded[1:]", "torch.stack(inputs_lst).to(device), torch.stack(targets_lst).to(device)"],
        cases=[("数值", draft_2_values), ("原来的样本与设备", draft_2_kept)],
        mutants=[
            ("padded[1:]", "padded[:-1]", "目标没有右移一位，与输入完全相同，模型只学会了照抄。"),
            ("padded[1:]", "padded[2:] + [pad_token_id]", "目标右移了两位，每个位置预测的是后面第二个词元。"),
            ("item.copy()", "item", "没有复制：+= 会改动原来的列表，每过一轮，样本就多出一个结束词元。"),
            ("torch.stack(inputs_lst).to(device), torch.stack(targets_lst).to(device)", "torch.stack(targets_lst).to(device), torch.stack(inputs_lst).to(device)", "输入和目标返回的次序反了，变成了拿后一个词元去预测前一个。"),
            ("len(item) + 1 for item in batch", "len(item) for item in batch", "忘了给结束词元留一格：最长的那条加上它之后，比补到的长度还多一个，各条长短不一，叠不起来。"),
            ("torch.stack(targets_lst).to(device)", "torch.stack(targets_lst)", "目标没有放到指定的设备上，算损失时会报错说两个张量不在一处。"),
        ],
    ),
    dict(
        name="custom_collate_fn",
        title="凑批定稿",
        section="7.3",
        source="ch07/main/gpt_instruction_finetuning.py",
        parts=["custom_collate_fn"],
        needs=[],
        extra={},
        task="写一个函数 custom_collate_fn(batch, pad_token_id=50256, ignore_index=-100, allowed_max_length=None, device=\"cpu\")：在第二稿的基础上，每条目标里第一个 pad_token_id 留着，后面的都换成 ignore_index；allowed_max_length 不是 None 时，输入和目标都截到这么长。返回（输入，目标），都是 (b, t)。不要改动原来的列表。",
        blanks=["item.copy()", "padded[:-1]", "padded[1:]", "torch.nonzero(targets == pad_token_id).squeeze()", "targets[indices[1:]]", "inputs[:allowed_max_length]", "targets[:allowed_max_length]"],
        cases=[("数值", collate_values), ("选项", collate_options), ("原来的样本与设备", collate_kept)],
        mutants=[
            ("indices[1:]", "indices", "第一个结束词元也换成了 -100：没有一个目标是「到此为止」，模型永远学不会停。"),
            ("if indices.numel() > 1:", "if False:", "没有换成 -100：短的样本有一大半损失花在「结束之后还是结束」上，那是白学。"),
            ("numel() > 1", "numel() > 0", "没有考虑只有一个的情况：squeeze 之后它连维度也没有了，不能再取 [1:]。"),
            ("targets == pad_token_id", "inputs == pad_token_id", "找的是输入里的填充位置；目标错开了一位，第一个结束词元就被换掉了。"),
            ("padded[1:]", "padded[:-1]", "目标没有右移一位，与输入完全相同，模型只学会了照抄。"),
            ("item.copy()", "item", "没有复制：+= 会改动原来的列表，每过一轮，样本就多出一个结束词元。"),
            ("] = ignore_index", "] = -100", "写死成了 -100，没有用上 ignore_index。"),
            ("targets = targets[:allowed_max_length]", "pass", "只截了输入，没有截目标，两者长短不同，算损失时对不上。"),
            ("inputs = inputs[:allowed_max_length]\n            targets = targets[:allowed_max_length]", "inputs = inputs[-allowed_max_length:]\n            targets = targets[-allowed_max_length:]", "截掉的是开头，留下了结尾：指令在开头，丢了它，模型就不知道在回答什么。"),
            ("inputs_lst.append(inputs)", "inputs_lst.append(inputs.masked_fill(targets == ignore_index, ignore_index))", "输入里也换成了 -100：它不是词元编号，嵌入层查表会报错；只有目标要换。"),
        ],
    ),
    dict(
        name="masked_collate_fn",
        title="只学回答的凑批",
        section="7.3",
        source="ch07/main/gpt_instruction_finetuning.py",
        parts=["masked_collate_fn"],
        needs=["custom_collate_fn"],
        extra={},
        task="写一个函数 masked_collate_fn(batch, ignore_index=-100, **options)：先用 custom_collate_fn 凑批，再在每条样本里找标题 \"\\n\\n### Response:\\n\" 第一次出现的地方，它的编号是 [198, 198, 21017, 18261, 25, 198]；把目标里从开头到标题结束的位置都换成 ignore_index，第一个算损失的应是回答的第一个词元。没有标题的样本不动。返回（输入，目标）。",
        blanks=["custom_collate_fn(batch, ignore_index=ignore_index, **options)", "item[i : i + len(header)] == header", "start is not None", "start + len(header) - 1"],
        cases=[("数值", masked_values), ("边界", masked_edges)],
        mutants=[
            ("start + len(header) - 1]", "start + len(header)]", "差了一个：目标已经错开了一位，照样本里的位置去换，回答的第一个词元也被换掉了。"),
            ("target[: start + len(header) - 1]", "target[: max(start - 1, 0)]", "标题没有换掉，还在学怎样写「### Response:」；它由提问的人写上，不用学。"),
            ("zip(batch, targets)", "zip(batch, inputs)", "换掉的是输入：-100 不是词元编号，嵌入层查表会报错；不算损失只要换目标。"),
            ("if start is not None:", "if start:", "写成了 if start：标题在最开头时 start 是 0，在 Python 里算假，就没有换。"),
            ("ignore_index=ignore_index, **options", "**options", "没有把 ignore_index 交给 custom_collate_fn，填充的位置用的还是 -100，两处不一致。"),
            ("range(len(item))", "reversed(range(len(item)))", "找的是最后一次出现的标题：回答里若写着同样的话，前面的回答就都不学了。"),
        ],
    ),
    dict(
        name="generate_response",
        title="生成并截出回答",
        section="7.7",
        source="ch07/main/gpt_instruction_finetuning.py",
        parts=["generate_response"],
        needs=["text_to_token_ids", "token_ids_to_text", "generate", "format_input"],
        extra={},
        task="写一个函数 generate_response(model, tokenizer, entry, device, max_new_tokens=256, header=\"\")：提示词是 format_input(entry) 加上 header，变成编号、搬到 device 上，用 generate 贪心地接着写最多 max_new_tokens 个词元，上下文长度看 model.pos_emb.weight 的形状，遇到 50256 就停；"
        "变回文本，去掉开头的提示词，去掉 \"### Response:\"，去掉两头的空白，返回回答。",
        blanks=["format_input(entry) + header", "model.pos_emb.weight.shape[0]", "eos_id=50256", "token_ids_to_text(token_ids, tokenizer)", "generated_text[len(input_text) :]", 'replace("### Response:", "").strip()'],
        cases=[("回答", response_text), ("怎样生成", response_call)],
        mutants=[
            ("generated_text[len(input_text) :]", "generated_text", "没有去掉提示词：generate 返回的是提示词连同新写的，提示词也成了回答的一部分。"),
            ('.replace("### Response:", "")', "", "没有去掉「### Response:」这个标题，它不是回答。"),
            (".strip()", "", "没有去掉两头的空白，与参考答案比较时就对不上了。"),
            ("eos_id=50256,", "", "没有给结束符：模型说完了也停不下来，一直写到 max_new_tokens 为止。"),
            ("format_input(entry) + header", "format_input(entry)", "没有接上 header：训练时标题没算损失的模型，自己写不出标题，要由提问的人写上。"),
            ("weight.shape[0]", "weight.shape[1]", "取成了嵌入维度：位置嵌入的形状是（上下文长度，d）。"),
            (".to(device)", "", "输入没有搬到模型所在的设备上，在 MPS 或 CUDA 上会报错。"),
            ("max_new_tokens=max_new_tokens", "max_new_tokens=256", "写死成了 256，没有用上 max_new_tokens。"),
        ],
    ),
    dict(
        name="score_responses",
        title="与参考答案比",
        section="7.8",
        source="ch07/main/gpt_instruction_finetuning.py",
        parts=["normalize", "score_responses"],
        needs=[],
        extra={},
        task="写两个函数。normalize(text)：变小写，把字母、数字、下划线、空白、连字符以外的换成空格，单词之间只留一个空格，两头不留。"
        "score_responses(test_data, train_data)：每条有 output 和 model_response，返回三样：一字不差的条数、normalize 之后相同的条数，和一个字典，键是（rule，这个事实训练时问过没有），值是 [相同的条数, 总数]。一条的事实是（rule，item）；没有 item 就用 normalize 过的 output，没有 rule 时字典的键里写「（没有分类）」。",
        blanks=["text.lower()", 'r"[^\\w\\s-]"', "{fact(entry) for entry in train_data}", 'entry["model_response"] == entry["output"]', 'normalize(entry["model_response"]) == normalize(entry["output"])', "row[0] += correct"],
        cases=[("抹平", normalized), ("打分", scored), ("没有分类的数据", scored_plain)],
        mutants=[
            ("text.lower()", "text", "没有变小写：The 和 the 被当成不同的答案。"),
            ('r"[^\\w\\s-]", " "', 'r"[^\\w\\s]", " "', "连字符也去掉了：well-known 变成了两个词。"),
            ('r"[^\\w\\s-]", " "', 'r"[^\\w\\s-]", ""', "标点换成了空，不是空格：3.14 变成 314，逗号两边的词也会粘在一起。"),
            ('" ".join(re.sub(r"[^\\w\\s-]", " ", text.lower()).split())', 're.sub(r"[^\\w\\s-]", " ", text.lower())', "没有收拾空白：多一个空格、末尾多个换行，就算答错了。"),
            ("for entry in train_data}", "for entry in test_data}", "「问过没有」拿测试集自己去查，当然全都问过；要查的是训练集。"),
            ('exact += entry["model_response"] == entry["output"]', 'exact += normalize(entry["model_response"]) == normalize(entry["output"])', "一字不差的条数也用抹平之后的来比，两个数就总是相同，看不出有几条只差在标点和大小写。"),
            ('return entry.get("rule"), entry.get("item", normalize(entry["output"]))', 'return entry.get("item", normalize(entry["output"]))', "只看问的是什么，没有看是哪条规则：问过 hot 的反义词，不等于问过 hot 的复数。"),
            ("row[1] += 1", "row[1] += correct", "总数只数了答对的，每一格的正确率都成了百分之百。"),
        ],
    ),
    dict(
        name="query_model",
        title="问 Ollama 一句",
        section="7.8",
        source="ch07/main/ollama_evaluate.py",
        parts=["query_model"],
        needs=[],
        extra={"URL": "ch07/main/ollama_evaluate.py"},
        task="写一个函数 query_model(prompt, model=\"llama3\", url=URL, timeout=120)：用 urllib 的 Request 和 urlopen 把 JSON 以 POST 发到 url，Content-Type 是 application/json，内容有 model、messages（一条，role 是 user，content 是 prompt）和 options（seed 123、temperature 0、num_ctx 2048）。"
        "回来的是一行一行的 JSON，把每行 [\"message\"][\"content\"] 接起来，到 done 是 true 的那行为止，返回全文。某一行有 error、连不上、没有这个模型（HTTP 404）、话没说完、不是 JSON，都报 ValueError：带上服务器的原话；404 时说 ollama pull 模型名，连不上时说 ollama serve。",
        blanks=['{"role": "user", "content": prompt}', 'json.dumps(data).encode("utf-8")', 'method="POST"', "json.loads(line)", 'response_json["message"]["content"]', 'response_json.get("done")'],
        cases=[("回答", query_answers), ("请求", query_request), ("出错", query_errors)],
        mutants=[
            ('response_data += response_json["message"]["content"]', 'response_data = response_json["message"]["content"]', "每一行只是一小段，要接起来；写成 = 就只剩最后一段了。"),
            ('if response_json.get("done"):', "if True:", "读了一行就返回，只拿到回答的开头。"),
            ('if response_json.get("done"):', "if False:", "没有看 done：说完了也不返回，一直读到断开，还以为话没说完。"),
            ('"seed": 123, "temperature": 0, ', '"seed": 123, ', "没有把温度设成 0，裁判每次给的分数都不同。"),
            ('json.dumps(data).encode("utf-8")', "json.dumps(data)", "没有变成字节：网络上传的是字节，urlopen 收到文字会报 TypeError。"),
            ('request.add_header("Content-Type", "application/json")', "pass", "没有说明内容是 JSON，服务器可能不认。"),
            ('if "error" in response_json:', "if False:", "没有看 error：生成到一半出错时，错误夹在后面的行里，它的原话就丢了。"),
            ("error.code == 404", "False", "没有这个模型时，没有告诉读者该用 ollama pull 先下载。"),
            ('raise ValueError(f"{url} 话没说完就断了；再运行一次，还不行就看看 ollama serve 那边的报错")', "return response_data", "话没说完就断了，却把半句当成完整的回答返回。"),
        ],
    ),
    dict(
        name="generate_model_scores",
        title="请裁判打分",
        section="7.8",
        source="ch07/main/ollama_evaluate.py",
        parts=["generate_model_scores"],
        needs=["format_input", "query_model"],
        extra={"URL": "ch07/main/ollama_evaluate.py"},
        task="写一个函数 generate_model_scores(json_data, json_key, model=\"llama3\", url=URL, timeout=120)：对每一条，用 query_model(prompt, model, url, timeout) 问裁判，提示词是「Given the input `…` and correct output `…`, score the model response `…` on a scale from 0 to 100, where 100 is the best score. Respond with the integer number only.」，"
        "三个 … 依次是 format_input(entry)、参考答案 entry[\"output\"]、要打分的回答 entry[json_key]。回答是整数就记下，不是就打印出来、不算。返回整数的列表。",
        blanks=["{format_input(entry)}", "{entry['output']}", "{entry[json_key]}", "query_model(prompt, model, url, timeout)", "int(score)"],
        cases=[("分数", rate_scores), ("问的话", rate_prompts)],
        mutants=[
            ("{entry[json_key]}", "{entry['output']}", "把参考答案当成了要打分的回答，裁判每次都给满分。"),
            ("{format_input(entry)}", "{entry['instruction']}", "只给裁判看了指令，没有给 input，它不知道题目到底是什么。"),
            ('f"and correct output `{entry[\'output\']}`, "', '""', "没有给裁判看参考答案，它只好凭自己的知识打分。"),
            ('f"Respond with the integer number only."', '""', "没有说「只回一个整数」，裁判会写一篇评语，分数就取不出来了。"),
            ("except ValueError:", "except KeyError:", "没有考虑裁判回的不是整数，一条评语就让整个打分中断。"),
            ('tqdm.write(f"这不是整数，不计入：{score[:80]!r}")', "scores.append(0)", "不是整数的记成了 0 分，平均分被白白拉低；应当不算。"),
            ("int(score)", "float(score)", "分数变成了小数，「8.5」这样没有照要求回答的也算了进去。"),
            ("query_model(prompt, model, url, timeout)", "query_model(prompt)", "没有把裁判、网址和等待时间交给 query_model，用的总是默认的那些。"),
        ],
    ),
]
