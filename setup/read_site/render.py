"""边读边看：整个网站，脚本交给 paint.py 画，Markdown 文档在这里画

运行：由 setup/read.py 调用
"""

import html
import json
import re
import shutil
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
import book
import extract
import paint
import prose
import record
import touch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup
from mdit_py_plugins.anchors import anchors_plugin
from mdit_py_plugins.tasklists import tasklists_plugin
from pygments.lexers import BashLexer
from pygments.token import Token

ROOT = extract.ROOT
HERE = Path(__file__).resolve().parent


class Site:
    """整个网站：知道有哪些页、谁用了谁、哪个组件能练。

    参数:
        scripts (list[Path]): 要画哪些脚本；None 表示全部
    """

    def __init__(self, scripts=None):
        self.names = [path.relative_to(ROOT).as_posix() for path in scripts] if scripts else book.book_order()
        self.docs = {"README.md": "index.html", "CODING_STANDARDS.md": "standards.html", "setup/README.md": "setup.html", "setup/practice.md": "practice.html", "setup/data/README.md": "data.html"}
        self.docs |= {f"{chapter}/README.md": f"{chapter}/index.html" for chapter in book.CHAPTERS if (ROOT / chapter / "README.md").is_file()}
        pages = dict(self.docs) | {name: name.removesuffix(".py") + ".html" for name in self.names}
        self.titles, sections = {}, {}
        for name in self.names:
            self.titles[name] = self.opening(name)
            for place in re.findall(r"[\dA-E]\.[\d.]+", self.titles[name].place) if "/main/" in name else []:
                sections.setdefault(place, pages[name])
        for name in self.names:  # 3.5.1 这样的小节，在讲它的那一格
            if "/main/example_" in name:
                for place in re.findall(r"^# %% (\d\.\d\.\d|[A-E]\.\d\.\d)", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE):
                    sections.setdefault(place, pages[name])
        self.linker, self.pages = prose.Linker(pages, sections), pages
        self.users, self.practice = book.users(), book.practice()
        self.touches = {page: title for page, (title, *_) in touch.PAGES.items()}
        self.environment = Environment(loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        self.others = [(f"touch/{page}.html", title) for page, title in self.touches.items()]
        self.others += [("standards.html", "代码与注释规范"), ("setup.html", "安装与工具"), ("practice.html", "手敲练习"), ("data.html", "自带的数据")]
        self.order = self.reading_order()
        self.environment.globals |= {"contents": self.contents(), "others": self.others}

    @staticmethod
    def opening(name):
        """一个脚本的开头；读不懂的，标题就是文件名。

        参数:
            name (str): 脚本

        返回:
            SimpleNamespace: extract.read_opening 的结果
        """
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
            match = re.match(r'\s*(?:#[^\n]*\n)*"""(.*?)"""', text, re.DOTALL)  # 不必分析整个语法树
            return extract.read_opening(match[1] if match else Path(name).stem)
        except (OSError, UnicodeDecodeError):
            return extract.read_opening(Path(name).stem)

    def reading_order(self):
        """书的次序：首页、各章（README、脚本）、规范、安装、练习。

        返回:
            list[tuple[str, str]]: 每页的网址和标题
        """
        order = [("index.html", "首页")]
        for chapter, title in book.CHAPTERS.items():
            names = [name for name in self.names if name.startswith(f"{chapter}/")]
            if f"{chapter}/README.md" in self.docs:
                order.append((f"{chapter}/index.html", title))
            order += [(self.pages[name], self.short_title(name)) for name in names]
        return order + self.others

    def short_title(self, name):
        """上一页、下一页和目录里用的短标题。

        参数:
            name (str): 脚本

        返回:
            str: 标题
        """
        opening = self.titles[name]
        title = re.split("[：，（]", opening.title)[0] if len(opening.title) > 22 else opening.title
        return f"{opening.place}　{title}" if opening.place else title

    def contents(self):
        """目录：每章分正文、练习、实验。

        返回:
            list[dict]: 每章一项
        """
        found = []
        for chapter, title in book.CHAPTERS.items():
            groups = []
            for label, test in (("正文", "/main/"), ("练习", "/exercise_"), ("实验", "/exp_")):
                names = [name for name in self.names if name.startswith(f"{chapter}/") and test in name]
                if names:
                    groups.append((label, [(self.pages[name], self.short_title(name)) for name in names]))
            if groups:
                found.append({"key": chapter, "title": title, "url": f"{chapter}/index.html", "groups": groups})
        return found

    def page(self, url, template, title, **values):
        """套上模板。

        参数:
            url (str): 网址
            template (str): 模板
            title (str): 标题
            **values: 模板里用的

        返回:
            str: 整页 HTML
        """
        root = "../" * url.count("/")
        places = [place for place, _ in self.order]
        at = places.index(url) if url in places else None
        before = self.order[at - 1] if at else None
        after = self.order[at + 1] if at is not None and at + 1 < len(places) else None
        return self.environment.get_template(template).render(url=url, root=root, title=title, before=before, after=after, chapters=book.CHAPTERS, **values)

    # ---- 动手的页面 ----

    def touch(self, name):
        """一个动手的页面。

        参数:
            name (str): 如 bpe

        返回:
            tuple[str, list, str]: 整页 HTML；搜索用的一节；空的
        """
        url, (title, intro, scripts) = f"touch/{name}.html", touch.PAGES[name]
        state, kept = touch.read(name)
        links = [(Path(script).name, self.pages.get(script)) for script in scripts]
        told = Markup(prose.inline(intro, self.linker, "../"))
        page = self.page(url, "touch.html", title, key=name, heading=paint.kept_together(title, html.escape), intro=told, state=state, scripts=links, date=kept.get("date", ""))
        return page, [[url, title, "", intro, ""]], ""

    def write_rest(self, out, entries):
        """页面之外的：样子、脚本、搜索用的文字、图片。

        参数:
            out (Path): 网站
            entries (list): 搜索用的各节
        """
        for path in (HERE / "static").iterdir():
            shutil.copyfile(path, out / path.name)
        rows = ",\n".join(json.dumps(entry, ensure_ascii=False, separators=(",", ":")) for entry in entries)
        (out / "search-data.js").write_text(f"window.SEARCH=[\n{rows}\n]\n", encoding="utf-8")
        for name in self.touches:
            state, kept = touch.read(name)
            if state == "fresh":
                data = json.dumps({key: value for key, value in kept.items() if key not in ("digest", "date")}, ensure_ascii=False, separators=(",", ":"))
                (out / "touch" / f"{name}-data.js").write_text(f"window.DATA={data}\n", encoding="utf-8")
        pictures = [(path, Path("pictures", path.name)) for path in (ROOT / ".github" / "images").glob("*.png")]
        pictures += [(path, Path("pictures", path.relative_to(record.RECORDS))) for path in record.RECORDS.rglob("*.webp")]
        for source, target in pictures:
            (out / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, out / target)

    # ---- 脚本 ----

    def script(self, name):
        """一个脚本的页面。坏的脚本只坏它自己这一页，写明哪里坏了。

        参数:
            name (str): 脚本

        返回:
            tuple[str, list, str]: 整页 HTML；搜索用的各节；哪里坏了（没有坏就是空的）
        """
        url, opening = self.pages[name], self.titles[name]
        try:
            script = extract.read_script(ROOT / name)
            return *paint.Painter(self, script).page(), ""
        except (SyntaxError, ValueError, OSError) as error:
            where = f"第 {error.lineno} 行：{error.msg}" if isinstance(error, SyntaxError) else str(error)
            try:
                lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError):
                lines = []
            return self.page(url, "broken.html", opening.title, name=name, where=where, lines=lines), [], f"{name}　{where}"

    # ---- 文档 ----

    def doc(self, name):
        """一份 Markdown 文档的页面。

        参数:
            name (str): 文档，相对项目根目录

        返回:
            tuple[str, list]: 整页 HTML，搜索用的各节
        """
        url, folder = self.docs[name], str(Path(name).parent).replace("\\", "/").removeprefix(".")
        root = "../" * url.count("/")
        text = (ROOT / name).read_text(encoding="utf-8")
        chapter = folder if folder in book.CHAPTERS else ""
        used, heads = set(), []
        parser = MarkdownIt("commonmark", {"html": False, "linkify": False}).enable(["table", "strikethrough"])
        parser.use(anchors_plugin, max_level=3, slug_func=lambda words: book.github(words, used)).use(tasklists_plugin)
        # 链接的文字里写的是文件名，文档里的锚点是 GitHub 的写法：都换成这个网站的。
        env = {"folder": folder, "root": root, "here": url}
        tree = parser.parse(text, env)
        title = tree[1].content if tree and tree[0].type == "heading_open" else name
        self.rewrite(tree, env, heads)
        body = parser.renderer.render(tree, parser.options, env)
        body = re.sub(r"<table>", '<div class="wide" tabindex="0"><table>', body).replace("</table>", "</table></div>")
        body = re.sub(r"<h1.*?</h1>\s*", "", body, count=1, flags=re.DOTALL)
        body = body.replace('<input class="task-list-item-checkbox" ', '<input class="task-list-item-checkbox" aria-label="做完了" ')
        sections = [entry for entry in self.contents() if entry["key"] == chapter]
        found = self.index_doc(url, title, text, heads)
        values = {"body": Markup(body), "heads": heads, "chapter": chapter, "listing": sections[0] if sections else None, "name": name, "home": name == "README.md", "states": self.states(chapter)}
        values["progress"] = book.progress_rows(text) if name == "README.md" else []
        values["touch"] = self.touches if name == "README.md" else {}
        values["cells"] = {link: state["cells"] for link, state in values["states"].items() if "/main/" in link} if name == "README.md" else {}
        return self.page(url, "doc.html", re.sub(r"[*`]", "", title), **values), found

    def states(self, chapter):
        """一章里每个脚本：网址 → 用时、输出录了没有、有几节可以打勾。

        参数:
            chapter (str): 哪一章；空的就是全书

        返回:
            dict: 网址到这三样
        """
        found = {}
        for name in self.names:
            if name.startswith(f"{chapter}/") or not chapter:
                text = (ROOT / name).read_text(encoding="utf-8", errors="replace")
                state = record.load(name, text).state
                cells = text.count("\n# %%") + 1 if "\n# %%" in text else len(re.findall(r"^(?:def|class) ", re.sub(r"^# region.*?^# endregion", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)) + 1
                found[self.pages[name]] = {"cost": self.titles[name].cost.split("（")[0], "state": state, "cells": cells}
        return found

    def rewrite(self, tree, env, heads):
        """改写 Markdown 的链接、图片、行内代码和代码块。

        参数:
            tree (list): markdown-it 的记号
            env (dict): folder、root、here
            heads (list): 收集二、三级标题
        """
        for index, token in enumerate(tree):
            if token.type == "heading_open" and token.tag in ("h2", "h3"):
                heads.append((token.tag, token.attrs["id"], re.sub(r"[*`]|\[([^\]]*)\]\([^)]*\)", r"\1", tree[index + 1].content)))
            if token.type in ("fence", "code_block"):
                token.type, token.content = "html_block", self.fence(token.content, token.info.strip())
            if token.children:
                token.children = self.rewrite_inline(token.children, env)

    def rewrite_inline(self, children, env):
        """行内的链接、图片和代码。

        参数:
            children (list): 行内的记号
            env (dict): folder、root、here

        返回:
            list: 改好的记号
        """
        found, dropped, linked = [], 0, False
        for at, token in enumerate(children):
            if token.type == "softbreak" and 0 < at < len(children) - 1:  # 汉字之间的换行不是空格
                before, after = (children[at - 1].content or "a")[-1], (children[at + 1].content or "a")[0]
                if extract.glued(before) or extract.glued(after) or extract.width(before) == extract.width(after) == 2:
                    continue
            if token.type == "link_open":
                href = token.attrs["href"]
                linked = True
                if not re.match(r"https?:|mailto:|#", href):
                    path, _, anchor = href.partition("#")
                    target = self.linker.find(re.sub("^(\\./)?", "", path), env["folder"]) or self.linker.find(str(Path(env["folder"], path)).replace("\\", "/"))
                    target = target or self.resolve_up(path, env["folder"])
                    if not target:  # 没有页面的文件：只留文字
                        dropped += 1
                        linked = False
                        continue
                    token.attrs["href"] = env["root"] + target + (f"#{anchor}" if anchor else "")
                elif not href.startswith("#"):
                    token.attrs["rel"] = "noreferrer"
            elif token.type == "link_close":
                linked = False
                if dropped:
                    dropped -= 1
                    continue
            elif token.type == "image":
                source = (ROOT / env["folder"] / token.attrs["src"]).resolve()
                token.attrs["src"] = f"{env['root']}pictures/{source.name}"
                token.attrs["loading"] = "lazy"
            elif token.type == "code_inline":
                url = None if linked else self.linker.find(token.content.removeprefix("python "), env["folder"]) if re.search(r"\.(py|md)\b|^example_\d\d$", token.content) else None
                shown = f"<code>{html.escape(token.content, quote=False)}</code>"
                token.type, token.content = "html_inline", f'<a href="{env["root"]}{url}">{shown}</a>' if url and url != env["here"] else shown
            found.append(token)
        return found

    def resolve_up(self, path, folder):
        """../setup/practice.md 这样的相对路径。

        参数:
            path (str): 链接里写的
            folder (str): 写着它的文档在哪个文件夹

        返回:
            str 或 None: 网址
        """
        full = (ROOT / folder / path).resolve()
        if not full.is_relative_to(ROOT):
            return None
        name = full.relative_to(ROOT).as_posix()
        return self.pages.get(name) or self.pages.get(f"{name}/README.md") or self.pages.get(f"{name}/README.md".lstrip("./"))

    def fence(self, text, language):
        """一个代码块。

        参数:
            text (str): 内容
            language (str): bash、python 或没有

        返回:
            str: HTML
        """
        if language in ("bash", "powershell", "sh") or re.match(r"(python|bash|\$ python|pip) ", text):
            lines = paint.tokens(text.rstrip("\n"), BashLexer(stripnl=False, ensurenl=False)) if language else [[(Token.Text, line)] for line in text.rstrip("\n").split("\n")]
            body = "\n".join(paint.code_html(line) for line in lines)
            button = '<button class="copy" type="button">复制</button>' if language else ""
            return f'<div class="fence">{button}<pre tabindex="0"><code>{body}</code></pre></div>\n'
        if language == "python":
            return f'<div class="fence"><pre tabindex="0"><code>{chr(10).join(paint.code_html(line) for line in paint.tokens(text.rstrip(chr(10))))}</code></pre></div>\n'
        return f'<div class="fence"><pre class="art" tabindex="0">{prose.columns(text.rstrip(chr(10)))}</pre></div>\n'

    def index_doc(self, url, title, text, heads):
        """文档按二、三级标题切开，给搜索用。

        参数:
            url (str): 网址
            title (str): 标题
            text (str): 全文
            heads (list): 各级标题

        返回:
            list: 各节
        """
        found, anchors = [], iter([("", ""), *[(anchor, words) for _, anchor, words in heads]])
        inside = False
        parts = [[]]
        for line in text.splitlines():
            inside ^= line.startswith("```")
            if not inside and re.match(r"##{1,2} ", line):
                parts.append([])
            parts[-1].append(line)
        for part, (anchor, words) in zip(parts, anchors):
            body = re.sub(r"[|*#>`]|\]\([^)]*\)|\[|-{3,}", " ", "\n".join(part))
            found.append([url + (f"#{anchor}" if anchor else ""), re.sub(r"[*`]", "", title), words, paint.squeeze(body), ""])
        return found
