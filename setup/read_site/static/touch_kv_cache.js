// KV 缓存：一步一步写，看哪些键是新算的、哪些是存着的。
"use strict";
const [layers, heads, size, width] = DATA.shape, values = new Int8Array(unpack(DATA.keys));
let layer = 0, head = 0, step = 0, cached = true;
const total = DATA.words.length - DATA.prompt; // 一共写几步
// 第 step 步之前缓存里有几行、这一步新算几行：第 0 步把提示词一次送完，以后每步只送刚写的那一个。
function work(at, withCache) {
  const seen = DATA.prompt + at;
  return { seen, fresh: withCache && at ? 1 : seen };
}
function sum(withCache) { let all = 0; for (let at = 0; at <= step; at += 1) all += work(at, withCache).fresh; return all; }
const key = (row, column) => values[((layer * heads + head) * size + row) * width + column] / 127 * DATA.scale[layer][head];
window.cache = { work, sum, key, go: (at) => draw(at) };

const grid = make("div", { class: "kv", tabindex: "0", role: "group", "aria-label": "每个词元的键" }), told = make("p", { class: "told", "aria-live": "polite" }), wrote = make("p", { class: "wrote" });
const move = slider("写到第几步", { min: 0, max: total - 1, value: 0, show: (at) => `${at + 1} / ${total}`, change: (at) => draw(at) });
const which = slider("第几层", { min: 1, max: layers, value: 1, change: (at) => { layer = at - 1; draw(step); } });
const one = slider("第几个头", { min: 1, max: heads, value: 1, change: (at) => { head = at - 1; draw(step); } });

function draw(at) {
  step = Math.max(0, Math.min(at, total - 1));
  move.input.value = String(step);
  move.refresh();
  const { seen, fresh } = work(step, cached), top = DATA.scale[layer][head];
  grid.replaceChildren(...Array.from({ length: size }, (_, row) => {
    const state = row >= seen ? "later" : row >= seen - fresh ? "fresh" : "kept";
    const cells = Array.from({ length: width }, (_, column) => {
      const value = row < seen ? key(row, column) : 0;
      return make("span", { class: value < 0 ? "num neg" : "num pos", style: `--v:${(Math.abs(value) / top).toFixed(2)}`, ...(row < seen ? { title: value.toFixed(3) } : {}) });
    });
    return make("div", { class: `line ${state}` }, make("span", { class: "name", text: row < DATA.prompt + step ? visible(DATA.words[row]) : "" }), make("span", { class: "cells" }, ...cells), make("span", { class: "note", text: state === "fresh" ? "新算" : state === "kept" ? "存着" : "" }));
  }));
  const next = DATA.words[seen];
  told.textContent = `这一步${cached ? (step ? "只算 1 个新词元" : `把提示词的 ${fresh} 个词元一次算完`) : `把 ${fresh} 个词元从头算一遍`}，写出「${visible(next)}」。到现在一共算了 ${sum(cached)} 个词元；${cached ? `不用缓存要算 ${sum(false)} 个` : `用缓存只要 ${sum(true)} 个`}。一层的键和值有 ${seen * width * heads * 2} 个数。`;
  wrote.replaceChildren(DATA.words.slice(0, seen).join(""), make("mark", { text: next }));
}
stage.append(
  make("div", { class: "panel" }, move.box, which.box, one.box, choice("缓存", [["yes", "用"], ["no", "不用"]], (value) => { cached = value === "yes"; draw(step); }),
    make("div", { class: "presses" }, button("上一步", () => draw(step - 1)), button("下一步", () => draw(step + 1)))),
  told, wrote, grid, make("p", { class: "recorded", text: `颜色越深，绝对值越大；红的是负数。用缓存与不用，写出来的一样，logits 最多相差 ${DATA.gap.toExponential(0)}。` }),
);
draw(0);
