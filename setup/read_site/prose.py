"""边读边看之三：把注释里的话变成 HTML：标识符、形状、公式、小节号、文件名、网址各有样子，该连到哪里就连到哪里

注释不是 Markdown：里面的 `_` 和 `*` 是代码，不是着重号，所以不能交给 markdown-it，要自己认。

运行：由 render.py 调用
"""

import html
import re
from pathlib import Path

WORDS = re.compile(
    r"`(?P<code>[^`]+)`"
    r"|(?P<url>https?://[^\s，。；、）)>」]+)"
    r"|(?P<path>(?:[\w-]+/)*(?:example|exp|exercise|gpt|multihead|dataloader|ddp|ollama|practice|copy_forward|download|find_data)\w*(?:\.py|(?<=\d)(?=[ 　，。；：）、的里]|$))|(?:[\w-]+/)+\w+\.py|(?:[\w-]+/)*[\w-]+\.(?:sh|md|txt|json|tsv|png|pth|safetensors)\b)"
    r"|(?P<section>(?<![\d.])(?:\d|[A-E])\.\d(?:\.\d)?(?= 节))"
    r"|(?P<formula>[A-Za-zΔΣθ(][^\u4e00-\u9fff，。；：？！、（）「」“”\n]* (?:=|≈) [^\u4e00-\u9fff，。；：？！、（）「」“”\n]*[^\s\u4e00-\u9fff，。；：？！、（）「」“”])"
    r"|(?P<shape>\((?:(?:[A-Za-z]|d_in|d_out|d_ff|…|\d+|\d[A-Za-z]|[A-Za-z][ ]?[-+·/×][ ]?\w+)(?:, ?|(?=\))))+\))"
    r"|(?P<name>\.?[A-Za-z_][\w.]*\([^()\u4e00-\u9fff]*\)|--[a-z][\w-]*|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+|[A-Za-z]*_\w+|\b(?!(?:PyTorch|TensorFlow|MacBook|GitHub|NumPy|DeepSeek|JavaScript|PowerShell|MacOS|WordPress)\b)[A-Z][a-z]+(?:[A-Z][a-z]+)+(?:_?[vV]\d)?\b|<\|\w+\|>)"
)
MATH = re.compile(r"[√ᵀΣ·²∂θ∞×÷≈Δ]|\b(?:softmax|exp|ln|log|mean|var)\b|\^")


def escape(text):
    """HTML 里的 < > & 换成实体。

    参数:
        text (str): 文字

    返回:
        str: 可以放进 HTML
    """
    return html.escape(text, quote=False)


def letters(shape):
    """形状里的每个字母单独成一个元素，才能一起点亮。

    参数:
        shape (str): 如 (b, h, t, k)

    返回:
        str: HTML

    示例:
        >>> letters("(b, 4d)")
        '(<b>b</b>, 4<b>d</b>)'
    """
    return re.sub(r"(?<![A-Za-z_])([A-Za-z](?:_(?:in|out|ff))?)(?![A-Za-z_])", r"<b>\1</b>", escape(shape))


class Linker:
    """知道每个脚本、每一节在哪一页。

    参数:
        pages (dict[str, str]): 脚本或文档（相对项目根目录）→ 网址（相对网站的根）
        sections (dict[str, str]): 小节号 → 网址
    """

    def __init__(self, pages, sections):
        self.pages, self.sections = pages, sections
        self.short = {}  # 只写文件名、不写文件夹的
        for name in pages:
            self.short.setdefault(Path(name).name, []).append(name)

    def find(self, text, folder=""):
        """一个文件名说的是哪一页。

        参数:
            text (str): 如 exp_resume.py、main/example_01_tokenizer.py、example_03
            folder (str): 写着它的文件在哪个文件夹

        返回:
            str 或 None: 网址，相对网站的根
        """
        text = text.strip().removeprefix("./").split(" ")[0]
        chapter = folder.split("/")[0]
        for name in (text, f"{folder}/{text}", f"{chapter}/{text}"):
            name = str(Path(name)).replace("\\", "/")
            if name in self.pages:
                return self.pages[name]
        if len(self.short.get(Path(text).name, [])) == 1:
            return self.pages[self.short[Path(text).name][0]]
        if re.fullmatch(r"example_\d\d", text):  # example_03 就是这一章的第三个
            found = [name for name in self.pages if name.startswith(f"{chapter}/main/{text}")]
            return self.pages[found[0]] if len(found) == 1 else None
        return None


def inline(text, linker, root, folder="", here=""):
    """一段话变成 HTML。

    参数:
        text (str): 一段话；换行符是另起一行
        linker (Linker): 网址从它来
        root (str): 从这一页到网站的根，如 "../../"
        folder (str): 写着它的文件在哪个文件夹
        here (str): 这一页自己的网址，不连到自己

    返回:
        str: HTML

    示例:
        >>> inline("填 `-inf`，见 d_out", Linker({}, {}), "")
        '填 <code>-inf</code>，见 <code>d_out</code>'
        >>> inline("所以 y = √k x。", Linker({}, {}), "")
        '所以 <span class="math">y = √k x</span>。'
    """

    def link(url, shown):
        return f'<a href="{root}{url}">{shown}</a>' if url and url != here else shown

    found, at = [], 0
    for match in WORDS.finditer(text):
        kind, word = match.lastgroup, match[0]
        if kind == "formula" and not MATH.search(word):  # x = 1 这样的是代码，不是公式
            kind = "name" if re.search(r"[\w)\]] = ", word) and not re.search(r"[A-Za-z]{2,} [A-Za-z]{2,}", word) else None
        if kind is None:
            continue
        shown = escape(word)
        if kind == "code":
            shown = f"<code>{escape(match['code'])}</code>"
            shown = link(linker.find(match["code"], folder), shown) if ".py" in match["code"] else shown
        elif kind == "url":
            shown = f'<a href="{html.escape(word)}" rel="noreferrer">{shown}</a>'
        elif kind == "path":
            shown = link(linker.find(word, folder), f"<code>{shown}</code>")
        elif kind == "section":
            shown = link(linker.sections.get(word), shown)
        elif kind == "formula":
            shown = f'<span class="math">{shown}</span>'
        elif kind == "shape":
            shown = f'<code class="p">{letters(word)}</code>'
        else:
            shown = f"<code>{shown}</code>"
        found += [escape(text[at : match.start()]), shown]
        at = match.end()
    return ("".join(found) + escape(text[at:])).replace("\n", "<br>")


def blocks(parts, tell):
    """几段话变成 HTML：自然段、条目、照原样的图。

    参数:
        parts (list[tuple]): extract.paragraphs 的结果
        tell (callable): 一段话 → HTML

    返回:
        str: HTML
    """
    found = []
    for kind, mark, text in parts:
        if kind == "pre":
            found.append(f'<pre class="art" tabindex="0">{columns(text)}</pre>')
        elif kind == "item":
            found.append(f'<p class="item"><span class="mark">{escape(mark)}</span>{tell(text)}</p>')
        else:
            change = ' class="change"' if text.startswith("改：") else ""
            found.append(f"<p{change}>{tell(text)}</p>")
    return "".join(found)


def columns(text):
    """等宽的图和表：汉字包起来，由 site.css 把每个字调成正好两列宽，不管读者的字体里是不是。

    参数:
        text (str): 原样的几行

    返回:
        str: HTML

    示例:
        >>> columns("词 a")
        '<i>词</i> a'
    """
    wide = r"[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6]+"
    found, at = [], 0
    for match in re.finditer(wide, text):
        found += [escape(text[at : match.start()]), f"<i>{match[0]}</i>"]
        at = match.end()
    return "".join(found) + escape(text[at:])


def printed(text):
    """脚本印出来的：一句话的行可以折，手机上才读得完；对齐过的表、张量照原样。

    参数:
        text (str): 几行

    返回:
        str: HTML

    示例:
        >>> printed("一句话。\\n甲  1.0")
        '<span class="w">一句话。</span>\\n<i>甲</i>  1.0'
    """
    lines = text.split("\n")
    said = [re.search(r"[\u4e00-\u9fff]", line) and not re.search(r"\S {2,}\S|　.*　", line) for line in lines]
    return "\n".join(f'<span class="w">{escape(line)}</span>' if one else columns(line) for line, one in zip(lines, said))
