// 损失曲线和它那时写的字：拖到哪一轮，就看那一轮。
"use strict";
const W = 640, H = 300, LEFT = 44, RIGHT = 16, TOP = 14, BOTTOM = 56;
const points = DATA.points, texts = DATA.texts, last = texts.length - 1;
const steps = Math.max(...points.map((point) => point[1])), high = Math.ceil(Math.max(...points.flatMap((point) => [point[2], point[3]])));
const x = (step) => LEFT + (Math.max(0, step) / steps) * (W - LEFT - RIGHT), y = (value) => TOP + (1 - value / high) * (H - TOP - BOTTOM);
const svg = (tag, props, ...inside) => { const made = document.createElementNS("http://www.w3.org/2000/svg", tag); for (const [name, value] of Object.entries(props)) made.setAttribute(name, value); made.append(...inside); return made; };
const line = (which) => points.filter((point) => point[1] >= 0).map((point, at) => `${at ? "L" : "M"}${x(point[1]).toFixed(1)} ${y(point[which]).toFixed(1)}`).join("");

const cursor = svg("line", { class: "cursor", y1: TOP, y2: H - BOTTOM });
const dots = [2, 3].map((which) => svg("circle", { class: which === 2 ? "dot train" : "dot val", r: 5 }));
const chart = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": "训练损失和验证损失随步数的曲线", class: "chart" });
for (let value = 0; value <= high; value += 2) chart.append(svg("line", { class: "rule", x1: LEFT, x2: W - RIGHT, y1: y(value), y2: y(value) }), svg("text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, String(value)));
for (let step = 0; step <= steps; step += 20) chart.append(svg("text", { x: x(step), y: H - BOTTOM + 24, "text-anchor": "middle" }, String(step)));
chart.append(svg("text", { x: (LEFT + W) / 2, y: H - 6, "text-anchor": "middle" }, "步"), svg("path", { class: "train", d: line(2) }), svg("path", { class: "val", d: line(3) }));
const end = points.at(-1);
chart.append(svg("text", { class: "train", x: W - RIGHT - 4, y: y(end[2]) - 10, "text-anchor": "end" }, "训练"), svg("text", { class: "val", x: W - RIGHT - 4, y: y(end[3]) - 10, "text-anchor": "end" }, "验证"), cursor, ...dots);

const told = make("p", { class: "told", "aria-live": "polite" }), wrote = make("blockquote", { class: "wrote" });
const move = slider("看第几轮", { min: 0, max: last, value: 0, show: (at) => (at ? `第 ${at} 轮` : "训练之前"), change: draw });
// 一轮里可能评估过一次、两次，也可能一次也没有：用这一轮最后的那次，没有就说没有。
function evaluated(epoch) { return points.filter((point) => point[0] === epoch).at(-1) ?? null; }
window.evaluated = evaluated;
const lowest = points.reduce((one, other) => (other[3] < one[3] ? other : one));
function draw(epoch) {
  const point = evaluated(epoch), { text, copied } = texts[epoch];
  for (const mark of [cursor, ...dots]) mark.style.display = point ? "" : "none";
  if (point) {
    cursor.setAttribute("x1", x(point[1])); cursor.setAttribute("x2", x(point[1]));
    dots.forEach((dot, at) => { dot.setAttribute("cx", x(point[1])); dot.setAttribute("cy", y(point[2 + at])); });
  }
  const share = copied.reduce((sum, [from, to]) => sum + to - from, 0) / text.length;
  told.textContent = (point ? `训练损失 ${point[2].toFixed(3)}，验证损失 ${point[3].toFixed(3)}${point === lowest ? "（验证损失最低的一次）" : ""}。` : "这一轮没有评估过损失。")
    + (epoch ? `它写的 ${text.length} 个字符里，${Math.round(share * 100)}% 是原文里一字不差的。` : "权重全是随机数，写的是胡话。");
  const pieces = [];
  let at = 0;
  for (const [from, to] of copied) { pieces.push(text.slice(at, from), make("mark", { text: text.slice(from, to) })); at = to; }
  wrote.replaceChildren(...pieces, text.slice(at));
}
stage.append(make("div", { class: "panel" }, move.box, make("div", { class: "presses" }, button("上一轮", () => step(-1)), button("下一轮", () => step(1)))), chart, told, wrote);
function step(by) { move.input.value = String(Number(move.input.value) + by); move.refresh(); draw(Number(move.input.value)); }
draw(0);
