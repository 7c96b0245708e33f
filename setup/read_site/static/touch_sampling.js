// 温度、top-k、top-p：次序与 exp_sampling.py 的 next_probs 相同，后一步看到的是前一步剩下的。
"use strict";
const prompts = DATA.prompts.map((prompt) => ({ ...prompt, logits: halves(unpack(prompt.logits)) }));
let prompt = prompts[0], temperature = 1, topK = 0, topP = 1;
const SHOWN = 20;

// 每个词元的概率；被去掉的正好是 0。
function probabilities() {
  const { logits } = prompt, size = logits.length;
  if (temperature === 0) { // 贪心
    const only = new Float64Array(size);
    only[logits.indexOf(logits.reduce((one, other) => Math.max(one, other), -Infinity))] = 1;
    return only;
  }
  let scores = logits.map((score) => score / temperature);
  const order = prompt.order ??= Uint32Array.from(logits.keys()).sort((one, other) => logits[other] - logits[one] || one - other);
  if (topK) {
    const least = scores[order[Math.min(topK, size) - 1]]; // 与第 k 个并列的也留下
    scores = scores.map((score) => (score < least ? -Infinity : score));
  }
  if (topP < 1) {
    const chances = softmax(scores), kept = new Float64Array(size).fill(-Infinity);
    let before = 0;
    for (const id of order) { // 比它大的加起来还不够 p，才留下它：跨过 p 的那一个也在
      if (before >= topP) break;
      kept[id] = scores[id];
      before += chances[id];
    }
    scores = kept;
  }
  return softmax(scores);
}
window.probabilities = probabilities;
const bars = make("ol", { class: "bars" }), told = make("p", { class: "told", "aria-live": "polite" }), drawn = make("p", { class: "ids", "aria-live": "polite" });
const percent = (number) => (number === 0 ? "0" : number < 0.0001 ? "< 0.01%" : `${(number * 100).toFixed(number < 0.01 ? 2 : 1)}%`);
const name = (id) => visible(prompt.top.find(([each]) => each === id)?.[1] ?? `#${id}`);
let chances;
function draw() {
  chances = probabilities();
  const plain = prompt.plain ??= softmax(prompt.logits);
  const widest = prompt.top.reduce((most, [id]) => Math.max(most, chances[id], plain[id]), 0); // 最长的一条画满
  bars.replaceChildren(...prompt.top.slice(0, SHOWN).map(([id, text]) => make("li", { class: chances[id] ? "" : "gone", style: `--p:${(chances[id] / widest).toFixed(4)};--q:${(plain[id] / widest).toFixed(4)}` }, make("code", { text: visible(text) }), make("span", { class: "bar" }), make("span", { class: "value", text: chances[id] ? percent(chances[id]) : "去掉了" }))));
  let left = 0, shown = 0, entropy = 0;
  for (const chance of chances) if (chance > 0) { left += 1; entropy -= chance * Math.log(chance); }
  for (const [id] of prompt.top.slice(0, SHOWN)) shown += chances[id];
  told.textContent = `剩下 ${left.toLocaleString()} 个词元可抽，相当于在 ${Math.exp(entropy).toFixed(1)} 个里平均地抽；画出来的 ${SHOWN} 个占 ${percent(Math.min(1, shown))}。`;
  drawn.textContent = "";
}
function sample(times) {
  const counts = new Map();
  for (let time = 0; time < times; time += 1) {
    let rest = Math.random(), id = 0;
    while (id < chances.length - 1 && (rest -= chances[id]) >= 0) id += 1;
    counts.set(id, (counts.get(id) ?? 0) + 1);
  }
  drawn.textContent = [...counts].sort((one, other) => other[1] - one[1]).slice(0, 12).map(([id, count]) => (times > 1 ? `${name(id)} × ${count}` : `${prompt.text}【${name(id)}】`)).join("　");
}
const warm = slider("温度", { min: 0, max: 3, step: 0.05, value: 1, show: (value) => (value ? value.toFixed(2) : "0（贪心）"), change: (value) => { temperature = value; draw(); } });
const most = slider("top-k", { min: 0, max: 100, value: 0, show: (value) => (value ? `${value} 个` : "不用"), change: (value) => { topK = value; draw(); } });
const core = slider("top-p", { min: 0.05, max: 1, step: 0.01, value: 1, show: (value) => (value < 1 ? value.toFixed(2) : "不用"), change: (value) => { topP = value; draw(); } });
stage.append(
  make("div", { class: "panel" }, choice("读完的一句话", prompts.map((each, at) => [at, each.text]), (at) => { prompt = prompts[at]; draw(); }), warm.box, most.box, core.box,
    make("div", { class: "presses" }, button("抽一个", () => sample(1)), button("抽 100 次", () => sample(100)))),
  told, bars, drawn,
);
draw();
