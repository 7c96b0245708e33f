// 边读边看：明暗、复制、目录、搜索、打勾、盖住、形状。没有这个文件，页面照样能读。
"use strict";
{ // 一个块：里面的名字不漏出去，与各页自己的 JavaScript 不相干
const root = document.body.dataset.root, url = document.body.dataset.url;
const $ = (selector, from = document) => from.querySelector(selector);
const $$ = (selector, from = document) => [...from.querySelectorAll(selector)];
const say = (text) => { $("#page-say").textContent = ""; setTimeout(() => { $("#page-say").textContent = text; }, 30); };
const keep = {
  get(name, otherwise) { try { return JSON.parse(localStorage.getItem("read:" + name)) ?? otherwise; } catch { return otherwise; } },
  set(name, value) { try { localStorage.setItem("read:" + name, JSON.stringify(value)); } catch { /* 无痕窗口里存不下，不存就是 */ } },
};
const element = (tag, props = {}, ...inside) => { const made = Object.assign(document.createElement(tag), props); made.append(...inside); return made; };

// ---- 明暗 ----
$("#page-theme").addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const now = dark ? "light" : "dark";
  document.documentElement.dataset.theme = now;
  try { localStorage.setItem("read:theme", now); } catch { /* 同上 */ }
  say(now === "dark" ? "暗" : "明");
});

// ---- 复制 ----
async function copy(text) {
  try { await navigator.clipboard.writeText(text); } catch { // file:// 里有的浏览器不给用剪贴板
    const box = element("textarea", { value: text });
    document.body.append(box); box.select(); document.execCommand("copy"); box.remove();
  }
}
for (const button of $$(".copy")) button.addEventListener("click", async () => {
  const code = $("code", button.parentElement);
  await copy(code.textContent.trim());
  button.textContent = "已复制"; say("已复制");
  setTimeout(() => { button.textContent = "复制"; }, 1500);
});

// ---- 目录：按 Esc 或点外面就收起 ----
const toc = $(".toc");
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && toc.open) { toc.open = false; $("summary", toc).focus(); }
  if (event.key === "/" && !/INPUT|TEXTAREA/.test(document.activeElement.tagName)) { event.preventDefault(); $("#find-box").focus(); }
});
document.addEventListener("click", (event) => { if (toc.open && !toc.contains(event.target)) toc.open = false; });
if (matchMedia("(min-width: 900px)").matches) for (const inpage of $$(".paper > .side .inpage")) inpage.open = true;

// ---- 搜索：第一次点进搜索框才读全书的文字 ----
const box = $("#find-box"), hits = $("#find-hits");
let loading;
const load = () => loading ??= new Promise((done, failed) => {
  document.head.append(element("script", { src: root + "search-data.js", onload: done, onerror: failed }));
});
const shorten = (text, word, size = 46) => { // 命中的前后各一段
  const at = Math.max(0, text.toLowerCase().indexOf(word));
  const from = Math.max(0, at - size / 2), bit = text.slice(from, at + word.length + size);
  return [from ? "…" : "", bit.slice(0, at - from), text.slice(at, at + word.length), bit.slice(at - from + word.length)];
};
async function search() {
  const words = box.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) { hits.hidden = true; return; }
  try { await load(); } catch { hits.replaceChildren(element("p", { textContent: "search-data.js 读不进来：重新运行 python setup/read.py" })); hits.hidden = false; return; }
  const found = searchAll(window.SEARCH, words).slice(0, 40);
  const items = found.map(({ entry, where }) => {
    const [link, page, section, text, code] = entry;
    const [dots, before, hit, after] = shorten(where === 3 ? code : text, words.find((word) => (where === 3 ? code : text).toLowerCase().includes(word)) ?? words[0]);
    const bit = element("span", { className: "bit" }, dots + before, element("mark", { textContent: hit }), after);
    return element("a", { href: root + link }, element("b", { textContent: page }), section ? "　" + section : "", ...(hit ? [bit] : []));
  });
  hits.replaceChildren(...(items.length ? items : [element("p", { textContent: `没有找到「${box.value.trim()}」` })]));
  hits.hidden = false;
  say(`找到 ${found.length} 处`);
}
// 全书约三百万字符，一次从头找到尾只要几毫秒，所以不建索引：一个字、半个单词、下划线和小数点都找得到。
function searchAll(entries, words) {
  const found = [];
  for (const entry of entries) {
    const fields = entry.low ??= [entry[1], entry[2], entry[3], entry[4]].map((text) => text.toLowerCase());
    let score = 0, where = -1;
    for (const word of words) {
      const at = fields.findIndex((text) => text.includes(word));
      if (at < 0) { score = -1; break; }
      score += [entry[2] ? 20 : 60, 40, 12, 6][at]; // 一页的标题，只在它的开头算数
      if (fields[0].startsWith(word + "　") || fields[1] === word) score += 80; // 小节号、组件的名字
      const body = fields[2] + fields[3];
      let times = 0, from = -1;
      while (times < 5 && (from = body.indexOf(word, from + 1)) >= 0) times += 1;
      score += times;
      where = Math.max(where, at);
    }
    if (score < 0) continue;
    if (/\/main\//.test(entry[0])) score += 25; // 讲透它的地方排在实验前面
    found.push({ entry, score: score - fields[2].length / 20000, where });
  }
  return found.sort((one, other) => other.score - one.score);
}
box.addEventListener("focus", () => load().catch(() => {}));
box.addEventListener("input", search);
box.addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown") { event.preventDefault(); $("a", hits)?.focus(); }
  if (event.key === "Enter") { const first = $("a", hits); if (first && !hits.hidden) first.click(); }
  if (event.key === "Escape") hits.hidden = true;
});
hits.addEventListener("keydown", (event) => {
  const links = $$("a", hits), at = links.indexOf(document.activeElement);
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    event.preventDefault();
    (links[at + (event.key === "ArrowDown" ? 1 : -1)] ?? (at ? links[0] : box)).focus();
  }
  if (event.key === "Escape") { hits.hidden = true; box.focus(); }
});
hits.addEventListener("click", (event) => { if (event.target.closest("a")) hits.hidden = true; });
document.addEventListener("click", (event) => { if (!event.target.closest(".find")) hits.hidden = true; });

// ---- 打勾 ----
const ticks = keep.get("ticks", {});
const count = (page) => Object.keys(ticks[page] ?? {}).length;
for (const tick of $$("[data-tick]")) {
  tick.checked = Boolean(ticks[url]?.[tick.dataset.tick]);
  tick.addEventListener("change", () => {
    ticks[url] ??= {};
    if (tick.checked) ticks[url][tick.dataset.tick] = 1; else delete ticks[url][tick.dataset.tick];
    keep.set("ticks", ticks);
  });
}
for (const place of $$("[data-page]")) { const read = count(place.dataset.page); if (read) place.textContent = `读过 ${read} 节`; }
if (window.CELLS) {
  const total = {};
  for (const [page, size] of Object.entries(window.CELLS)) {
    const chapter = total[page.split("/")[0]] ??= [0, 0];
    chapter[0] += Math.min(size, count(page)); chapter[1] += size;
  }
  for (const place of $$("[data-done]")) { const [read, size] = total[place.dataset.done] ?? [0, 0]; place.textContent = read ? `${read} / ${size} 节` : ""; }
  $("#progress-export").addEventListener("click", async () => { // 正文全打了勾的章，「读完」那一栏换成 ☑
    const rows = window.PROGRESS.map((line) => {
      const number = line.match(/^\| (\d|附录 A)/), chapter = number && (number[1] === "附录 A" ? "appendix-A" : "ch0" + number[1]);
      const [read, size] = total[chapter] ?? [0, 0];
      return size && read >= size ? line.replace("☐", "☑") : line;
    });
    const text = $("#progress-text");
    text.value = rows.join("\n"); text.hidden = false;
    await copy(text.value);
    say("已复制，可以贴进 README.md 的「学习进度」");
    $("#progress-export").textContent = "已复制，贴进 README.md 的「学习进度」就行";
  });
}

// ---- 盖住代码，或盖住说明 ----
function cover(name, cells, uncover) {
  const button = $("#cover-" + name);
  if (!button) return;
  button.addEventListener("click", () => {
    const on = document.body.classList.toggle("cover-" + name);
    button.setAttribute("aria-pressed", on);
    for (const shown of $$(cells + " .shown, " + cells + ".shown")) shown.classList.remove("shown");
    for (const cell of $$(cells)) {
      const old = $(":scope > .reveal", cell);
      if (old) old.remove();
      if (on && cell.childElementCount) cell.prepend(element("button", { type: "button", className: "reveal", textContent: name === "code" ? "露出下一行" : "看说明" }));
    }
    say(on ? "盖住了，先自己说一遍" : "都露出来了");
  });
  document.addEventListener("click", (event) => {
    if (!document.body.classList.contains("cover-" + name)) return;
    const cell = event.target.closest(cells);
    if (cell) uncover(cell, event.target);
  });
}
cover("code", ".rows .code", (cell, target) => {
  const line = target.closest(".l") ?? $(".l:not(.shown)", cell);
  if (!line || line.classList.contains("shown")) return;
  line.classList.add("shown");
  if (target.classList.contains("reveal")) say(line.textContent.trim());
  if (!$(".l:not(.shown)", cell)) $(".reveal", cell)?.remove();
});
cover("prose", ".rows .prose", (cell) => { cell.classList.add("shown"); $(".reveal", cell)?.remove(); });

// ---- 形状：点一个变量，看它当时多大；图例里同一个字母一起亮 ----
function light(letters) {
  const wanted = new Set(letters);
  for (const mark of $$(".p > b")) mark.classList.toggle("lit", wanted.has(mark.textContent));
  for (const button of $$("[data-letter]")) button.setAttribute("aria-pressed", wanted.has(button.dataset.letter));
}
for (const button of $$("[data-letter]")) {
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", () => light(button.getAttribute("aria-pressed") === "true" ? [] : [button.dataset.letter]));
}
const tip = $("#shape-tip"), variables = $$("u[data-s]");
let open = null;
const row = (numbers) => numbers.map((each) => (typeof each === "number" && !Number.isInteger(each) ? each.toFixed(4) : String(each)).padStart(8)).join("");
const table = (numbers) => Array.isArray(numbers) ? (Array.isArray(numbers[0]) ? numbers.map(table).join("\n") + (Array.isArray(numbers[0][0]) ? "\n" : "") : row(numbers)) : String(numbers);
function show(variable) {
  const [shape, names, kind, numbers, other] = window.SHAPES[variable.dataset.s];
  tip.replaceChildren(element("code", { textContent: `${variable.textContent}　${shape}${names ? " = " + names : ""}` }), `　${kind}`);
  if (other) tip.append(`　也见过 ${other}`);
  if (numbers !== null) tip.append(element("pre", { textContent: table(numbers).trimEnd() }));
  tip.hidden = false;
  const place = variable.getBoundingClientRect();
  const left = Math.min(place.left, innerWidth - tip.offsetWidth - 16);
  tip.style.left = `${Math.max(8, left) + scrollX}px`;
  tip.style.top = `${(place.bottom + tip.offsetHeight + 12 < innerHeight || place.top < tip.offsetHeight + 80 ? place.bottom + 6 : place.top - tip.offsetHeight - 6) + scrollY}px`;
  open?.setAttribute("aria-expanded", "false");
  open = variable;
  variable.setAttribute("aria-expanded", "true");
  light(names.match(/[A-Za-z](?:_\w+)?/g) ?? []);
  say(tip.textContent);
}
function hide() {
  if (!open) return;
  open.setAttribute("aria-expanded", "false");
  open = null; tip.hidden = true; light([]);
}
if (tip && variables.length) {
  for (const cell of $$(".cell")) { // 一节只占一个 Tab 停靠点，里面用左右键走
    const inside = $$("u[data-s]", cell);
    inside.forEach((variable, at) => { variable.tabIndex = at ? -1 : 0; variable.setAttribute("role", "button"); variable.setAttribute("aria-expanded", "false"); });
  }
  document.addEventListener("click", (event) => {
    const variable = event.target.closest("u[data-s]");
    if (variable && !(document.body.classList.contains("cover-code") && !variable.closest(".l").classList.contains("shown"))) { if (variable === open) hide(); else show(variable); }
    else if (!event.target.closest("#shape-tip, [data-letter]")) hide();
  });
  document.addEventListener("keydown", (event) => {
    const variable = event.target.closest?.("u[data-s]");
    if (event.key === "Escape") hide();
    if (!variable) return;
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); if (variable === open) hide(); else show(variable); }
    if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
      event.preventDefault();
      const inside = $$("u[data-s]", variable.closest(".cell")).filter((each) => each.offsetParent);
      const next = inside[inside.indexOf(variable) + (event.key === "ArrowRight" ? 1 : -1)];
      if (next) { variable.tabIndex = -1; next.tabIndex = 0; next.focus(); if (open) show(next); }
    }
  });
}

// ---- 链到折叠起来的地方：先展开 ----
function unfold() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let at = target?.parentElement; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  target?.scrollIntoView();
}
addEventListener("hashchange", unfold);
if (location.hash) unfold();
}
