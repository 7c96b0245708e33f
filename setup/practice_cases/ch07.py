"""手敲练习 · 第 7 章　每个组件的任务、检查和典型错误

格式与怎样添加，见 setup/practice.md。检查函数只拿到一个 ns：被检查的文件里定义的一切，用 ns.名字 取。
"""

import contextlib
import io
import json
import tempfile
from pathlib import Path
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


# ---- download_and_load_file、format_input、InstructionDataset ----
def loaded(ns, content=None, path="data.json"):
    """写一个临时文件，读一次：返回读到的，或报错的类型；以及联网了没有。"""
    asked = []

    def urlopen(url, timeout=None):
        asked.append(url)
        return contextlib.nullcontext(SimpleNamespace(read=lambda: json.dumps(entries()).encode("utf-8")))

    with tempfile.TemporaryDirectory() as folder, mock.patch("urllib.request.urlopen", urlopen):
        file = Path(folder) / path
        if content is not None:
            file.write_bytes(content)
        try:
            data = ns.download_and_load_file(file, "http://x")
        except ValueError:
            data = "ValueError"
        return {"读到的": data, "问过的网址": asked, "文件在了": file.exists()}


def load_good(ns):
    """文件在，就不联网；不在，先下载、存下来。"""
    good = [{"instruction": "指令", "input": "", "output": "回答"}]
    return {"文件在": loaded(ns, json.dumps(good, ensure_ascii=False).encode("utf-8")), "文件不在": loaded(ns)}


def load_bad(ns):
    """不是这样的数据，都报 ValueError。"""
    good = {"instruction": "a", "input": "", "output": "b"}
    cases = {"不是 JSON": b"[{", "不是列表": b'{"a": 1}', "空列表": b"[]", "少了键": json.dumps([good, {"instruction": "a", "input": ""}]).encode()}
    cases |= {"不是文字": json.dumps([good | {"input": 3}]).encode(), "不是字典": b'["a"]', "里面有结束词元": json.dumps([good | {"output": "x<|endoftext|>"}]).encode()}
    return {name: loaded(ns, content)["读到的"] for name, content in cases.items()}


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


# ---- generate_response ----
def respond(ns, reply, device="cpu", **options):
    """用假的 generate 回答一条：提示词后面接上 reply；返回回答，和 generate 收到的东西。"""
    import torch

    calls, tokenizer = [], CharTokenizer()

    def spy(model, idx, max_new_tokens, context_size, temperature=0.0, top_k=None, eos_id=None):
        calls.append({"形状": list(idx.shape), "设备": idx.device.type, "最多写几个": max_new_tokens, "上下文长度": context_size, "温度": float(temperature), "结束词元": eos_id})
        return torch.tensor([tokenizer.encode(ns.format_input(entries()[1]) + reply)])

    model = SimpleNamespace(pos_emb=SimpleNamespace(weight=torch.zeros(32, 4)))
    with swapped(ns.generate_response, generate=spy):
        return ns.generate_response(model, tokenizer, entries()[1], torch.device(device), **options), calls


def response_text(ns):
    """截出的回答。"""
    replies = {"有标题": "\n\n### Response:\nOccasion. \n", "没有标题": " Occasion.", "什么也没写": "", "回答有两行": "\n\n### Response:\nOne\nTwo"}
    return {name: respond(ns, reply)[0] for name, reply in replies.items()}


def response_call(ns):
    """交给 generate 的东西。"""
    return {"默认": respond(ns, "x")[1], "最多 7 个，在 meta 上": respond(ns, "x", device="meta", max_new_tokens=7)[1]}


# ---- check_if_running、query_model、generate_model_scores ----
def opener(reply, calls):
    """假的 OPENER：记下每次问的是什么；reply 是要交出去的各行，或要报的错。"""

    def urlopen(request, timeout=None):
        if isinstance(request, str):
            calls.append(request)
        else:
            calls.append({"网址": request.full_url, "方法": request.get_method(), "类型": request.get_header("Content-type"), "内容是字节": isinstance(request.data, bytes), "内容": json.loads(request.data)})
        if isinstance(reply, Exception):
            raise reply
        return contextlib.nullcontext(io.BytesIO(b"".join(reply)))

    return SimpleNamespace(open=urlopen)


def running(ns, reply, name="ollama"):
    """问一声：返回在不在，和问的网址。"""
    calls = []
    with swapped(ns.check_if_running, OPENER=opener(reply, calls), URL="http://localhost:1/api/chat"):
        return ns.check_if_running(name), calls


def running_or_not(ns):
    """在、不在、连不上、答话的是别的程序。"""
    from http.client import BadStatusLine
    from urllib.error import URLError

    return {
        "在": running(ns, [b"Ollama is running"])[0],
        "名字写成大写": running(ns, [b"Ollama is running"], "OLLAMA")[0],
        "找的是别的服务": running(ns, [b"Ollama is running"], "nginx")[0],
        "连不上": running(ns, URLError(ConnectionRefusedError(111, "refused")))[0],
        "等太久": running(ns, TimeoutError())[0],
        "答话的不是网页服务器": running(ns, BadStatusLine("x"))[0],
    }


def running_where(ns):
    """问的是首页，不是 /api/chat。"""
    return {"问的网址": running(ns, [b"Ollama is running"])[1]}


def ask(ns, lines, **options):
    """问一句：返回回答，和发出去的请求。"""
    calls = []
    fake = opener(lines, calls)
    with swapped(ns.query_model, OPENER=fake), mock.patch("urllib.request.urlopen", fake.open):
        return ns.query_model("How are you?", url="http://localhost:1/api/chat", **options), calls


def line(content, done=False):
    """Ollama 发来的一行。"""
    return json.dumps({"message": {"role": "assistant", "content": content}, "done": done}).encode() + b"\n"


def query_answers(ns):
    """把一行一行的片段接起来。"""
    return {"几段": ask(ns, [line("Fi"), line("ne"), line(", 谢谢"), line("", done=True)])[0], "只有一段": ask(ns, [line("85", done=True)])[0]}


def query_request(ns):
    """发出去的请求。"""
    return {"默认": ask(ns, [line("ok", True)])[1], "换个模型": ask(ns, [line("ok", True)], model="phi3")[1]}


def rated():
    """四条要打分的回答。"""
    return [entry | {"model_response": reply} for entry, reply in zip([*entries(), *entries()], ["Warm.", "Occasion.", "Cold", "Ocean."])]


def rate(ns, replies, **options):
    """用假的 query_model 打分：返回分数和每一次问的话。"""
    calls, replies = [], iter(replies)

    def spy(prompt, model="llama3", url=""):
        calls.append((prompt, model, url))
        return next(replies)

    with swapped(ns.generate_model_scores, query_model=spy, URL="http://u/api/chat"):
        return quietly(lambda: ns.generate_model_scores(rated(), "model_response", **options)), calls


def rate_scores(ns):
    """分数；看不出是几分的不算。"""
    return {"都是整数": rate(ns, ["85", "100", " 0 ", "7\n"])[0], "有几条看不出": rate(ns, ["85", "Score: 90", "between 80 and 90", ""])[0]}


def parsed(ns, *replies):
    """每一句话里取出的分数。"""
    return {reply: ns.parse_score(reply) for reply in replies}


def parse_taken(ns):
    """裁判真会这样写：只有一个数可能是分数。"""
    return parsed(ns, "85", " 0 \n", "92.5", "**85**", "__85__", "85/100", "**85** / 100", "85 out of 100.", "Score: 85", "得分：85 分", "85分", "I would rate this response 85.", "On a scale from 0 to 100, I would score it 85.", "Score: 85. I score it 85.")


def parse_thought(ns):
    """先想一段的，想了一半的。"""
    return parsed(ns, "<think>maybe 70, or 80</think>85", "<think>\n70?\n</think>\n\nScore: 85", "<think>I would score it 85", "<think>85</think>Good answer.")


def parse_unclear(ns):
    """可能是分数的不止一个，或一个也没有。"""
    return parsed(ns, "", "between 80 and 90", "80-90", "I would give 85 out of 90", "8/10", "Score: 85\nScore: 90", "-5", "Score: −5", "101", "150/100", "85/1000", "Score: at least 80")


def parse_other_numbers(ns):
    """话里有别的数。"""
    return parsed(ns, "It lists 3 animals.", "85\n\nIt lists 3 animals.", "Score: 85\nIt has 2 typos.", "The accurate answer is 4.")


# ---- 练习 7.2 的 InstructionDataset 和 custom_collate_fn：只学回答 ----
def masked_texts(ns, entries, **options):
    """没有遮住的文字。"""
    dataset = ns.InstructionDataset(entries, CharTokenizer())
    inputs, targets = ns.custom_collate_fn([dataset[i] for i in range(len(dataset))], pad_token_id=95, **options)  # 95 是 ~，文字里没有
    return {"形状": list(inputs.shape), "没有遮住的": [CharTokenizer().decode(row[row >= 0].tolist()) for row in targets]}


def masked_plain(ns):
    """一般的两条。"""
    return masked_texts(ns, entries())


def masked_header(ns):
    """指令、input、回答里写着标题。"""
    title = "\n\n### Response:\n"
    return masked_texts(ns, [{"instruction": f"Repeat:{title}hello", "input": "", "output": "hello"}, {"instruction": "Repeat.", "input": f"a{title}b", "output": f"a{title}b"}])


def masked_values(ns):
    """手算得出的一批；遮与不遮；截短。"""
    batch = [(3, [0, 1, 2, 3, 4]), (1, [5, 6]), (2, [7, 8, 9])]
    results = {"遮": ns.custom_collate_fn(batch), "不遮": ns.custom_collate_fn(batch, mask_instruction=False), "最长 3 个": ns.custom_collate_fn(batch, allowed_max_length=3)}
    return results | {"ignore_index 是 -1": ns.custom_collate_fn(batch, ignore_index=-1), "原来的样本": batch}


def masked_lengths(ns):
    """样本是（提示词有几个词元，编号）。"""
    by_word = SimpleNamespace(encode=lambda text, **_: [len(word) for word in text.split(" ")])
    sets = {"一个字符一个词元": ns.InstructionDataset(entries(), CharTokenizer()), "一个单词一个词元": ns.InstructionDataset(entries(), by_word)}
    return {name: [list(dataset[i]) for i in range(len(dataset))] for name, dataset in sets.items()}


def rate_prompts(ns):
    """问裁判的话里有什么。"""
    _, calls = rate(ns, ["1", "2", "3", "4"], model="phi3")
    found = []
    for entry, (prompt, *_) in zip(rated(), calls):
        pieces = {"题目和输入": ns.format_input(entry), "参考答案": f"`{entry['output']}`", "要打分的回答": f"`{entry['model_response']}`", "只回一个整数": "integer number only", "0 到 100": "0 to 100"}
        found.append([name for name, piece in pieces.items() if piece in prompt])
    return {"每次问的话里都有": found, "裁判、网址": [call[1:] for call in calls]}


# ---- LoRALayer、replace_linear_with_lora ----
def lora_values(ns):
    """刚建好时改动是 0；B 不是 0 时的改动，和对 A、B 的梯度。"""
    import torch

    torch.manual_seed(123)
    layer = ns.LoRALayer(6, 4, 2, 8)
    x = torch.randn(3, 6)
    fresh = layer(x)
    layer.B.data.normal_()
    layer(x).square().sum().backward()
    return {"刚建好": fresh, "训练过": layer(x), "A 的梯度": layer.A.grad, "B 的梯度": layer.B.grad}


def lora_parameters(ns):
    """两个参数的形状和初值。"""
    import torch

    torch.manual_seed(123)
    layer = ns.LoRALayer(6, 4, 2, 8)
    return {"形状": {name: list(param.shape) for name, param in layer.named_parameters()}, "A": layer.A, "B": layer.B}


def lora_model():
    """一个小模型：线性层有的在外面，有的在里面，还有一个不是线性层。"""
    import torch

    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.Linear(4, 3)))


def replaced(ns):
    """换完之后，参数的名字，和训练过的输出。"""
    import torch

    model, x = lora_model(), torch.ones(2, 4)
    before = model(x)
    torch.manual_seed(2)
    ns.replace_linear_with_lora(model, 2, 4)
    fresh = model(x)
    for name, param in model.named_parameters():
        if name.endswith("B"):
            param.data.fill_(0.5)
    return {"参数": [f"{name} {tuple(param.shape)}" for name, param in model.named_parameters()], "刚换完与原来的差": (fresh - before).abs().max(), "训练过": model(x)}


COMPONENTS = [
    dict(
        name="download_and_load_file",
        title="读指令数据",
        section="7.2",
        source="ch07/main",
        parts=["download_and_load_file"],
        needs=[],
        extra={},
        task="写一个函数 download_and_load_file(file_path, url)：file_path 不存在，就用 urllib.request.urlopen(url, timeout=30) 下载，按 UTF-8 解码，存到 file_path；再读它，按 JSON 解析，返回那个列表。"
        "不是 UTF-8 的 JSON、不是列表、是空的，或有一条不是字典、instruction、input、output 不全是文字、里面有 <|endoftext|>，都报 ValueError。",
        blanks=["os.path.exists(file_path)", 'response.read().decode("utf-8")', "json.load(file)", "isinstance(text, str)", '"<|endoftext|>" not in text'],
        cases=[("读和下载", load_good), ("坏数据", load_bad)],
        mutants=[
            ("if not os.path.exists(file_path):", "if True:", "每次都下载了。文件已经在了，就不该再联网：网络一断，什么也做不成。"),
            ("file.write(text_data)", "pass", "下载之后没有存下来。接着读的是一个空文件。"),
            ("not isinstance(data, list) or not data", "not isinstance(data, list)", "空的列表也放过了。切成三份，哪一份都是空的，要到训练时才报错。"),
            ('for key in ("instruction", "input", "output")]', 'for key in ("instruction", "input")]', "没有查 output。少了回答的那一条，凑批时才报 KeyError。"),
            (' and "<|endoftext|>" not in text', "", "正文里的结束词元放过了。它表示到此为止，会把一条数据切成两条。"),
            (' if isinstance(entry, dict) else [None]', "", "没有查是不是字典。列表里混着一句话时，报的是 AttributeError，看不出是第几条。"),
        ],
    ),
    dict(
        name="format_input",
        title="指令的提示词",
        section="7.2",
        source="ch07/main",
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
        name="InstructionDataset",
        title="指令数据集",
        section="7.3",
        source="ch07/main",
        parts=["InstructionDataset"],
        needs=["format_input"],
        extra={},
        task="写一个 Dataset 的子类 InstructionDataset(data, tokenizer)：每条把 format_input(entry)、标题 \"\\n\\n### Response:\\n\" 和 entry[\"output\"] 接起来，用 tokenizer.encode 变成编号，提前全部做好，存成 self.encoded_texts；原来的数据存成 self.data。第 index 个样本就是那个编号列表，长短不一。",
        blanks=["format_input(entry)", 'f"\\n\\n### Response:\\n{entry[\'output\']}"', "instruction_plus_input + response_text", "self.encoded_texts[index]", "len(self.data)"],
        cases=[("文本", dataset_texts), ("类型与次数", dataset_kinds)],
        mutants=[
            ("full_text = instruction_plus_input + response_text", "full_text = instruction_plus_input", "只有提示词，没有回答，模型学不到该怎样回答。"),
            ("full_text = instruction_plus_input + response_text", "full_text = response_text", "只有回答，没有提示词，模型不知道在回答什么。"),
            ('f"\\n\\n### Response:\\n{entry[\'output\']}"', "entry['output']", "少了「### Response:」这个标题：模型分不清指令到哪里为止，也不知道什么时候该它说话。"),
            ("\\n\\n### Response:\\n{", "\\n\\n### Response: {", "标题后面没有换行，与生成时的提示词对不上。"),
            ("instruction_plus_input = format_input(entry)", "instruction_plus_input = entry['instruction']", "没有用 format_input：少了开头那两句话和标题，input 也丢了。"),
            ("return self.encoded_texts[index]", "return self.data[index]", "返回的是原来的字典，不是编号。"),
        ],
    ),
    dict(
        name="custom_collate_draft_1",
        title="凑批第一稿：填充",
        section="7.3",
        source="ch07/main",
        parts=["custom_collate_draft_1"],
        needs=[],
        extra={},
        task="写一个函数 custom_collate_draft_1(batch, pad_token_id=50256, device=\"cpu\")，batch 是几条编号列表。每条复制一份，末尾加一个 pad_token_id，再填到这一批里最长的那么长（最长的也加了一个）；去掉最后一个，变成张量；叠成 (b, t)，放到 device 上返回。不要改动原来的列表。",
        blanks=["len(item) + 1 for item in batch", "item.copy()", "[pad_token_id] * (batch_max_length - len(new_item))", "padded[:-1]", "torch.stack(inputs_lst).to(device)"],
        cases=[("数值", draft_1_values), ("原来的样本与设备", draft_1_kept)],
        mutants=[
            ("item.copy()", "item", "没有复制：+= 会改动原来的列表，每过一轮，样本就多出一个结束词元。"),
            ("padded[:-1]", "padded", "没有去掉多留的那一格，输入比书上长了一个。"),
            ("[pad_token_id] * (batch_max_length - len(new_item))", "[0] * (batch_max_length - len(new_item))", "用 0 填充了：0 号是一个真的词元，应当用 pad_token_id。"),
            ("new_item + [pad_token_id] * (batch_max_length - len(new_item))", "[pad_token_id] * (batch_max_length - len(new_item)) + new_item", "填充在了前面；GPT 的位置从左数起，填充应在末尾。"),
            ("len(item) + 1 for item in batch", "len(item) for item in batch", "忘了给结束词元留一格：最长的那条加上它之后，比填到的长度还多一个，各条长短不一，叠不起来。"),
            ("max(len(item) + 1 for item in batch)", "1024", "填到了固定的长度：每批只要填到这一批里最长的，短的批就短，省下许多白算的填充。"),
            (".to(device)", "", "没有放到指定的设备上。"),
        ],
    ),
    dict(
        name="custom_collate_draft_2",
        title="凑批第二稿：目标",
        section="7.3",
        source="ch07/main",
        parts=["custom_collate_draft_2"],
        needs=[],
        extra={},
        task="写一个函数 custom_collate_draft_2(batch, pad_token_id=50256, device=\"cpu\")：像第一稿那样填充（每条末尾加一个 pad_token_id，填到最长的再加一个），去掉最后一个是输入，去掉第一个是目标；返回（输入，目标），都是 (b, t)，放到 device 上。不要改动原来的列表。",
        blanks=["item.copy()", "[pad_token_id] * (batch_max_length - len(new_item))", "padded[:-1]", "padded[1:]", "torch.stack(inputs_lst).to(device), torch.stack(targets_lst).to(device)"],
        cases=[("数值", draft_2_values), ("原来的样本与设备", draft_2_kept)],
        mutants=[
            ("padded[1:]", "padded[:-1]", "目标没有右移一位，与输入完全相同，模型只学会了照抄。"),
            ("padded[1:]", "padded[2:] + [pad_token_id]", "目标右移了两位，每个位置预测的是后面第二个词元。"),
            ("item.copy()", "item", "没有复制：+= 会改动原来的列表，每过一轮，样本就多出一个结束词元。"),
            ("torch.stack(inputs_lst).to(device), torch.stack(targets_lst).to(device)", "torch.stack(targets_lst).to(device), torch.stack(inputs_lst).to(device)", "输入和目标返回的次序反了，变成了拿后一个词元去预测前一个。"),
            ("len(item) + 1 for item in batch", "len(item) for item in batch", "忘了给结束词元留一格：最长的那条加上它之后，比填到的长度还多一个，各条长短不一，叠不起来。"),
            ("torch.stack(targets_lst).to(device)", "torch.stack(targets_lst)", "目标没有放到指定的设备上，算损失时会报错说两个张量不在一处。"),
        ],
    ),
    dict(
        name="custom_collate_fn",
        title="凑批定稿",
        section="7.3",
        source="ch07/main",
        parts=["custom_collate_fn"],
        needs=[],
        extra={},
        task="写一个函数 custom_collate_fn(batch, pad_token_id=50256, ignore_index=-100, allowed_max_length=None, device=\"cpu\")：在第二稿的基础上，每条目标里第一个 pad_token_id 留着，后面的都换成 ignore_index；allowed_max_length 不是 None 时，输入和目标都截到这么长。返回（输入，目标），都是 (b, t)。不要改动原来的列表。",
        blanks=["item.copy()", "padded[:-1]", "padded[1:]", "torch.nonzero(mask).squeeze()", "targets[indices[1:]]", "inputs[:allowed_max_length]", "targets[:allowed_max_length]"],
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
        name="generate_response",
        title="生成并截出回答",
        section="7.7",
        source="ch07/main",
        parts=["generate_response"],
        needs=["text_to_token_ids", "token_ids_to_text", "generate", "format_input"],
        extra={},
        task="写一个函数 generate_response(model, tokenizer, entry, device, max_new_tokens=256)：提示词是 format_input(entry)，变成编号、搬到 device 上，用 generate 贪心地接着写最多 max_new_tokens 个词元，上下文长度看 model.pos_emb.weight 的形状，遇到 50256 就停；"
        "变回文本，去掉开头的提示词，去掉 \"### Response:\"，去掉两头的空白，返回回答。",
        blanks=["model.pos_emb.weight.shape[0]", "eos_id=50256", "token_ids_to_text(token_ids, tokenizer)", "generated_text[len(input_text) :]", 'replace("### Response:", "").strip()'],
        cases=[("回答", response_text), ("怎样生成", response_call)],
        mutants=[
            ("generated_text[len(input_text) :]", "generated_text", "没有去掉提示词：generate 返回的是提示词连同新写的，提示词也成了回答的一部分。"),
            ('.replace("### Response:", "")', "", "没有去掉「### Response:」这个标题，它不是回答。"),
            (".strip()", "", "没有去掉两头的空白，与参考答案比较时就对不上了。"),
            ("eos_id=50256,", "", "没有给结束词元：模型说完了也停不下来，一直写到 max_new_tokens 为止。"),
            ("weight.shape[0]", "weight.shape[1]", "取成了嵌入维度：位置嵌入的形状是（上下文长度，d）。"),
            (".to(device)", "", "输入没有搬到模型所在的设备上，在 MPS 或 CUDA 上会报错。"),
            ("max_new_tokens=max_new_tokens", "max_new_tokens=256", "写死成了 256，没有用上 max_new_tokens。"),
        ],
    ),
    dict(
        name="check_if_running",
        title="Ollama 在运行吗",
        section="7.8",
        source="ch07/main",
        parts=["check_if_running"],
        needs=[],
        extra={"URL": "ch07/main/example_06_scores.py", "OPENER": "ch07/main"},
        task="写一个函数 check_if_running(process_name)：用 OPENER.open(首页的网址, timeout=5) 打开 Ollama 的首页，首页的网址是全局变量 URL 去掉末尾的 /api/chat；首页的文字里有 process_name（不分大小写）就返回 True。"
        "没有、连不上（OSError），或答话的不是网页服务器（http.client.HTTPException），返回 False。",
        blanks=['URL.removesuffix("/api/chat")', "process_name.lower()", "(OSError, HTTPException)", "return False"],
        cases=[("在不在", running_or_not), ("问哪里", running_where)],
        mutants=[
            ('URL.removesuffix("/api/chat")', "URL", "问的是 /api/chat，不是首页。那里只收问题，空着手去问，它会报错。"),
            ("process_name.lower() in response.read().decode(\"utf-8\").lower()", "True", "只要有回音就算在。那个端口上也可能是别的程序。"),
            ("process_name.lower() in", "process_name in", "名字没有变小写。首页写的是 Ollama，大小写不同就找不到。"),
            ("except (OSError, HTTPException):", "except ValueError:", "连不上的时候没有接住。没有运行时应当回答 False，不是报错。"),
            ("return False", "return True", "连不上也说在。"),
        ],
    ),
    dict(
        name="query_model",
        title="问 Ollama 一句",
        section="7.8",
        source="ch07/main",
        parts=["query_model"],
        needs=[],
        extra={"URL": "ch07/main/example_06_scores.py", "OPENER": "ch07/main"},
        task="写一个函数 query_model(prompt, model=\"llama3\", url=URL)：用 urllib.request.Request 和 OPENER.open 把 JSON 以 POST 发到 url，Content-Type 是 application/json，内容有 model、messages（一条，role 是 user，content 是 prompt）和 options（seed 123、temperature 0、num_ctx 2048）。"
        "回来的是一行一行的 JSON，把每行 [\"message\"][\"content\"] 接起来，返回全文。",
        blanks=['{"role": "user", "content": prompt}', 'json.dumps(data).encode("utf-8")', 'method="POST"', "json.loads(line)", 'response_json["message"]["content"]'],
        cases=[("回答", query_answers), ("请求", query_request)],
        mutants=[
            ('response_data += response_json["message"]["content"]', 'response_data = response_json["message"]["content"]', "每一行只是一小段，要接起来；写成 = 就只剩最后一段了。"),
            ("for line in response:", "for line in [next(iter(response))]:", "只读了第一行，拿到的是回答的开头。"),
            ('"seed": 123, "temperature": 0, ', '"seed": 123, ', "没有把温度设成 0，裁判每次给的分数都不同。"),
            ('json.dumps(data).encode("utf-8")', "json.dumps(data)", "没有变成字节：网络上传的是字节，发文字会报 TypeError。"),
            ('request.add_header("Content-Type", "application/json")', "pass", "没有说明内容是 JSON，服务器可能不认。"),
            ('"model": model,', '"model": "llama3",', "写死成了 llama3，没有用上 model。"),
        ],
    ),
    dict(
        name="parse_score",
        title="裁判的话里哪个数是分数",
        section="7.8",
        source="ch07/main",
        parts=["parse_score"],
        needs=[],
        extra={},
        task="写一个函数 parse_score(reply)：从裁判的话里取出 0 到 100 的分数（float）；只有一个数可能是分数才取，不然返回 None。</think> 之前的不算，有 <think> 却没有写完，就没有分数；*、_ 和 ` 只是排版；/100、out of 100、满分 100、0 to 100 里的 100 不是分数；"
        "只看说到分数的行（score、rate、give、得分、几分……）、以一个数开头的行和没有别的字的行；同一个数写两遍不要紧；有两个不同的数，前面有负号或 at least，大于 100，都返回 None。",
        blanks=['reply.rpartition("</think>")[2]', '"分"', "text.splitlines()", "len(numbers) == 1", '"<think>" not in text', "score[0].isdigit()"],
        cases=[("取得出", parse_taken), ("先想一段", parse_thought), ("看不出", parse_unclear), ("别的数", parse_other_numbers)],
        mutants=[
            ('reply.rpartition("</think>")[2]', "reply", "没有去掉 <think> 里的草稿。里面猜过的几个分数，也当成了分数。"),
            ('len(numbers) == 1 and "<think>" not in text', "len(numbers) == 1", "草稿没有写完，也从里面取了。想到一半的数，不是最后的分数。"),
            ("len(numbers) == 1", "len(numbers) >= 1", "有两个数也随便取了一个。「between 80 and 90」是几分？不猜。"),
            ("set(re.findall(", "list(re.findall(", "同一个分数说了两遍，就不认了。它说的是一个分数，要先去掉重复的。"),
            ("(?:/|\\bout of|满分|", "(?:", "满分也当成了分数。「85/100」里有两个数，就取不出了。"),
            (") ?100(?:", ") ?\\d+(?:", "分母是几都去掉了。「85 out of 90」满分不是 100，不能当 85 分。"),
            ("[-−–<>≤≥.负]|", "", "没有看负号。「-5」成了 5 分。"),
            ("float(score) <= 100", "True", "没有查是不是大于 100。「150/100」也算了进去。"),
            (" if re.search(says + r\"|^\\W*\\d[\\d.]* ?[^\\w\\s.]|^[\\W\\d]*$\", line)]", "]", "每一行都看了。「It lists 3 animals.」里的 3 成了 3 分。"),
            ('re.sub(r"[*_`]", "", ', '(', "没有去掉排版的记号。Markdown 的粗体「__85__」，看上去就不像一个数了。"),
        ],
    ),
    dict(
        name="generate_model_scores",
        title="请裁判打分",
        section="7.8",
        source="ch07/main",
        parts=["generate_model_scores"],
        needs=["format_input", "query_model", "parse_score"],
        extra={"URL": "ch07/main/example_06_scores.py", "OPENER": "ch07/main"},
        task="写一个函数 generate_model_scores(json_data, json_key, model=\"llama3\")：对每一条，用 query_model(prompt, model, URL) 问裁判，提示词是「Given the input `…` and correct output `…`, score the model response `…` on a scale from 0 to 100, where 100 is the best score. Respond with the integer number only.」，"
        "三个 … 依次是 format_input(entry)、参考答案 entry[\"output\"]、要打分的回答 entry[json_key]。回答交给 parse_score：是分数就记下，是 None 就用 tqdm.write 印出来（第几条、说了什么）、不算。返回分数的列表。",
        blanks=["{format_input(entry)}", "{entry['output']}", "{entry[json_key]}", "query_model(prompt, model, URL)", "parse_score(reply)"],
        cases=[("分数", rate_scores), ("问的话", rate_prompts)],
        mutants=[
            ("{entry[json_key]}", "{entry['output']}", "把参考答案当成了要打分的回答，裁判每次都给满分。"),
            ("{format_input(entry)}", "{entry['instruction']}", "只给裁判看了指令，没有给 input，它不知道题目到底是什么。"),
            ('f"and correct output `{entry[\'output\']}`, "', '""', "没有给裁判看参考答案，它只好凭自己的知识打分。"),
            ('f"Respond with the integer number only."', '""', "没有说「只回一个整数」，裁判会写一篇评语，分数就取不出来了。"),
            ("parse_score(reply)", "float(reply)", "没有考虑裁判回的不止一个数，一条评语就让整个打分中断。"),
            ("tqdm.write(f\"第 {number} 条看不出是几分，不计入：…{reply[-100:]!r}\")", "scores.append(0)", "看不出的记成了 0 分，平均分被白白拉低；应当不算。"),
            ("if score is None:", "if not score:", "0 分也当成了看不出。None 和 0 都是假，要用 is None 来分。"),
            ("if score is None:", "if False:", "没有去掉 None，求平均时会报错。"),
            ("query_model(prompt, model, URL)", "query_model(prompt)", "没有把裁判和网址交给 query_model，用的总是默认的那些。"),
        ],
    ),
    dict(
        name="masked_collate_fn",
        title="凑批：只学回答",
        section="练习 7.2",
        source="ch07/experiments/exercise_7_2_mask_instruction.py",
        parts=["InstructionDataset", "custom_collate_fn"],
        needs=["format_input"],
        extra={},
        task="改写两样，让提示词不算损失。InstructionDataset(data, tokenizer)：编号照旧（format_input(entry) 接标题 \"\\n\\n### Response:\\n\" 和 entry[\"output\"]），存成 self.encoded_texts；另外把提示词 format_input(entry) 有几个词元存成 self.instruction_lengths；第 index 个样本是（长度，编号列表）。"
        "custom_collate_fn(batch, pad_token_id=50256, ignore_index=-100, allowed_max_length=None, device=\"cpu\", mask_instruction=True)：凑批照旧（末尾加一个填充词元、填到一样长、目标右移一位、第一个填充词元之后换成 ignore_index）；mask_instruction 为真时，每条目标里属于提示词的也换成 ignore_index；最后才截到 allowed_max_length。返回（输入，目标），都是 (b, t)。不要改动原来的列表。",
        blanks=["len(tokenizer.encode(instruction_plus_input))", "self.instruction_lengths[index], self.encoded_texts[index]", "padded[1:]", "targets[indices[1:]]", "targets[: instruction_length - 1]"],
        cases=[("没有遮住的", masked_plain), ("指令里有标题", masked_header), ("数值", masked_values), ("样本", masked_lengths)],
        mutants=[
            ("len(tokenizer.encode(instruction_plus_input))", 'len(tokenizer.encode(full_text.split("\\n\\n### Response:")[0]))', "去找标题了，没有量提示词的长度。指令里写着「### Response:」，找到的是假的，会从指令的半中间开始学。"),
            ("len(tokenizer.encode(instruction_plus_input))", 'len(tokenizer.encode(full_text.rpartition("\\n\\n### Response:")[0]))', "找了最后一个标题。回答里写着「### Response:」，前半段回答就被遮住了。"),
            ("instruction_length - 1", "instruction_length", "没有减 1。目标比输入早一位，多遮一个，就丢了标题的第一个词元。"),
            ("instruction_length - 1", "instruction_length - 2", "多减了 1。少遮一个，会学到提示词的最后一个词元。"),
            ("targets[: instruction_length - 1]", "inputs[: instruction_length - 1]", "遮的是输入。模型看不到题目了，-100 也不是词元编号；只有目标要遮。"),
            ("if mask_instruction:", "if True:", "开关没有用。不遮的时候，应当与书里正文的相同。"),
            ("len(tokenizer.encode(instruction_plus_input))", "len(instruction_plus_input)", "量的是字符数。遮要按词元数，字符多得多，会把回答也遮住。"),
            ("targets[indices[1:]]", "targets[indices]", "第一个结束词元也遮了。模型永远学不会停。"),
        ],
    ),
    dict(
        name="LoRALayer",
        title="LoRA 的两个小矩阵",
        section="练习 7.4",
        source="ch07/experiments/exercise_7_4_lora.py",
        parts=["LoRALayer"],
        needs=[],
        extra={},
        task="写一个 nn.Module：LoRALayer(in_dim, out_dim, rank, alpha)。参数 A 是 (in_dim, rank)，用 nn.init.kaiming_uniform_(A, a=5**0.5) 初始化；参数 B 是 (rank, out_dim)，全 0。forward(x) 返回 (alpha / rank) 倍的 x·A·B。",
        blanks=["torch.empty(in_dim, rank)", "a=5**0.5", "torch.zeros(rank, out_dim)", "alpha / rank", "x @ self.A @ self.B"],
        cases=[("数值", lora_values), ("参数", lora_parameters)],
        mutants=[
            ("alpha / rank", "alpha", "没有除以 r。印在书上的版本就是这样；r 变大，改动就跟着变大，学习率要重新找。"),
            ("torch.zeros(rank, out_dim)", "torch.randn(rank, out_dim)", "B 不是从 0 开始的。刚挂上，模型的输出就变了，预训练学到的被打乱。"),
            ("nn.init.kaiming_uniform_(self.A, a=5**0.5)", "nn.init.zeros_(self.A)", "A 也是 0。A 和 B 都是 0，两边的梯度就都是 0，永远学不动。"),
            ("nn.init.kaiming_uniform_(self.A, a=5**0.5)", "nn.init.kaiming_uniform_(self.A)", "少了 a=5**0.5。与 nn.Linear 的默认初始化不同，A 大了两倍多。"),
        ],
    ),
    dict(
        name="replace_linear_with_lora",
        title="给每个线性层挂上 LoRA",
        section="练习 7.4",
        source="ch07/experiments/exercise_7_4_lora.py",
        parts=["LinearWithLoRA", "replace_linear_with_lora"],
        needs=["LoRALayer"],
        extra={},
        task="先写一个 nn.Module：LinearWithLoRA(linear, rank, alpha)，属性 linear 是原来的线性层，lora 是 LoRALayer(linear.in_features, linear.out_features, rank, alpha)，forward(x) 返回两者的输出之和。"
        "再写一个函数 replace_linear_with_lora(model, rank, alpha)：把 model 里每个 nn.Linear 就地换成 LinearWithLoRA；不是线性层的子模块，进到里面接着找。",
        blanks=["linear.in_features, linear.out_features, rank, alpha", "self.linear(x) + self.lora(x)", "isinstance(module, nn.Linear)", "LinearWithLoRA(module, rank, alpha)", "replace_linear_with_lora(module, rank, alpha)"],
        cases=[("换完", replaced)],
        mutants=[
            ("            replace_linear_with_lora(module, rank, alpha)", "            pass", "没有进到里面去找。GPT 的线性层都在块里面，一个也没有换。"),
            ("self.linear(x) + self.lora(x)", "self.linear(x)", "没有加上 LoRA 的改动。训练什么，输出都不变。"),
            ("self.linear(x) + self.lora(x)", "self.lora(x)", "丢了原来的输出。预训练学到的全没有了。"),
            ("linear.in_features, linear.out_features", "linear.out_features, linear.in_features", "输入和输出的维度写反了，形状对不上。"),
            ("LinearWithLoRA(module, rank, alpha))", "LinearWithLoRA(module, alpha, rank))", "秩和缩放写反了。"),
        ],
    ),
]
