// 字节对编码：打几个字，看它一对一对地合并。次序与 tiktoken 相同：每次并编号最小的一对，并列取最左边。
"use strict";
const pairs = new Uint16Array(unpack(DATA.pairs)), rankOf = new Map(), spelled = DATA.bytes.map((byte) => [byte]);
for (let at = 0; at < pairs.length; at += 2) {
  rankOf.set(pairs[at] * 65536 + pairs[at + 1], 256 + at / 2);
  spelled.push([...spelled[pairs[at]], ...spelled[pairs[at + 1]]]);
}
const idOfByte = new Map(DATA.bytes.map((byte, id) => [byte, id]));
// GPT-2 先按这个式子切开，合并不越过切口：空格跟着后面的词走。
const CUT = /'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;

// 从字节到词元的每一步：每步是一串词，每个词是一串编号；merged 是这一步新并出来的编号。
function steps(text) {
  let words = (text.match(CUT) ?? []).map((word) => [...new TextEncoder().encode(word)].map((byte) => idOfByte.get(byte)));
  const found = [{ words, merged: null }];
  while (true) {
    let best = Infinity, place = null;
    words.forEach((word, row) => {
      for (let at = 0; at + 1 < word.length; at += 1) {
        const rank = rankOf.get(word[at] * 65536 + word[at + 1]) ?? Infinity;
        if (rank < best) { best = rank; place = [row, at]; }
      }
    });
    if (!place) return found;
    const [row, at] = place;
    words = words.map((word, index) => (index === row ? [...word.slice(0, at), best, ...word.slice(at + 2)] : word));
    found.push({ words, merged: best, place });
  }
}
const encode = (text) => steps(text).at(-1).words.flat();
window.encode = encode;

const reader = new TextDecoder("utf-8", { fatal: true });
function spell(id) { // 凑成字符的写字符，凑不成的写字节
  try { return visible(reader.decode(Uint8Array.from(spelled[id]))); } catch { return spelled[id].map((byte) => byte.toString(16).padStart(2, "0")).join(" "); }
}
let all = [], now = 0, timer = null;
const box = make("textarea", { id: "text", rows: "2", maxlength: "200", spellcheck: "false" });
box.value = "Akwirw ier likes terraces. 今天你好";
const move = slider("合并了几次", { min: 0, max: 1, value: 0, show: (at) => `${at} / ${all.length - 1 || 0}`, change: (at) => draw(at) });
const chips = make("div", { class: "chips", tabindex: "0", role: "group", "aria-label": "现在的词元" }), told = make("p", { class: "told", "aria-live": "polite" }), ids = make("p", { class: "ids" });
const play = button("一步步播放", () => {
  if (timer) return stop();
  if (now >= all.length - 1) draw(0);
  play.textContent = "停";
  timer = setInterval(() => { if (now >= all.length - 1) stop(); else draw(now + 1); }, 450);
});
function stop() { clearInterval(timer); timer = null; play.textContent = "一步步播放"; }

function draw(at) {
  now = Math.max(0, Math.min(at, all.length - 1));
  move.input.value = String(now);
  move.refresh();
  const { words, merged, place } = all[now];
  chips.replaceChildren(...words.map((word, row) => make("span", { class: "word" }, ...word.map((id, column) => {
    const chip = make("span", { class: `chip c${id % 6}${place && place[0] === row && place[1] === column ? " new" : ""}`, text: spell(id), title: `编号 ${id}` });
    return chip;
  }))));
  told.textContent = merged === null ? "还没有合并：一格是一个字节，粗缝是切口，合并不会越过它。" : `第 ${now} 次：「${spell(pairs[(merged - 256) * 2])}」+「${spell(pairs[(merged - 256) * 2 + 1])}」→「${spell(merged)}」，编号 ${merged}，训练时第 ${merged - 255} 个学会的。`;
  const flat = words.flat();
  ids.textContent = `${[...box.value].length} 个字符，${new TextEncoder().encode(box.value).length} 个字节，现在 ${flat.length} 个词元：${flat.join(" ")}`;
}
function renew() {
  stop();
  all = steps(box.value);
  move.input.max = String(Math.max(1, all.length - 1));
  move.input.disabled = all.length < 2;
  draw(0);
}
box.addEventListener("input", renew);
stage.append(
  make("div", { class: "panel" }, make("label", { for: "text", text: "打几个字（中文、英文、代码都行）" }), box, move.box,
    make("div", { class: "presses" }, button("上一步", () => { stop(); draw(now - 1); }), button("下一步", () => { stop(); draw(now + 1); }), play, button("直接到最后", () => { stop(); draw(all.length - 1); }))),
  told, chips, ids,
);
renew();
