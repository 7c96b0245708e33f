// 一个注意力头：分数 ÷ 除数 → 遮住后面 → softmax → 权重。公式与 CausalAttention 的 ③④ 两步相同。
"use strict";
let head = DATA.heads[0], power = 0.5, mask = "inf", picked = head.words.length - 1;
const divisor = () => head.k ** power;
const masked = (row, column, number) => (mask === "none" || column <= row ? number : mask === "inf" ? -Infinity : 0);
// 三张表：原来的分数；除过、遮过的分数；每行 softmax 之后的权重。
function tables() {
  const scaled = head.scores.map((row, at) => row.map((score, column) => masked(at, column, score) / divisor()));
  return [head.scores, scaled, scaled.map(softmax)];
}
window.weights = () => tables()[2];
const say = make("p", { class: "told", "aria-live": "polite" }), grids = make("div", { class: "grids" });
const select = make("select", { id: "head" }, ...DATA.heads.map((each, at) => make("option", { value: String(at), text: each.name })));
select.addEventListener("change", () => { head = DATA.heads[Number(select.value)]; picked = head.words.length - 1; scale.refresh(); draw(); });
const scale = slider("除以 k 的几次方", { min: 0, max: 1, step: 0.05, value: 0.5, show: (value) => `${value.toFixed(2)} 次方，÷ ${(head.k ** value).toFixed(2)}${Math.abs(value - 0.5) < 1e-9 ? "（就是 √k）" : value === 0 ? "（不除）" : ""}`, change: (value) => { power = value; draw(); } });
const number = (value) => (value === -Infinity ? "-∞" : Math.abs(value) >= 100 ? value.toFixed(0) : Math.abs(value) >= 10 ? value.toFixed(1) : value.toFixed(2));

function grid(title, note, rows, shade) {
  const top = make("tr", {}, make("td"), ...head.words.map((word) => make("th", { scope: "col", text: visible(word) })));
  const body = rows.map((row, at) => {
    const name = button(visible(head.words[at]), () => { picked = at; draw(); [...grids.querySelectorAll(".picked .press")].at(-1)?.focus(); });
    name.setAttribute("aria-pressed", at === picked);
    return make("tr", { class: at === picked ? "picked" : "" }, make("th", { scope: "row" }, name), ...row.map((value, column) => make("td", { class: column > at ? "future" : "", style: shade ? `--w:${value.toFixed(3)}` : "", text: number(value) })));
  });
  return make("figure", { class: shade ? "grid shade" : "grid" }, make("figcaption", {}, make("b", { text: title }), " " + note), make("div", { class: "wide", tabindex: "0", role: "group", "aria-label": title }, make("table", {}, make("thead", {}, top), make("tbody", {}, ...body))));
}
function draw() {
  const [scores, scaled, weights] = tables();
  grids.replaceChildren(
    grid("① 分数", "Q · K，还没有除", scores, false),
    grid("② 除以、遮住", `÷ ${divisor().toFixed(2)}${mask === "inf" ? "，右上角填 -∞" : mask === "zero" ? "，右上角填 0" : "，没有遮"}`, scaled, false),
    grid("③ 权重", "每行 softmax，加起来是 1", weights, true),
  );
  const row = weights[picked], best = row.indexOf(Math.max(...row)), leak = row.slice(picked + 1).reduce((one, other) => one + other, 0);
  const entropy = -row.reduce((sum, weight) => sum + (weight > 0 ? weight * Math.log(weight) : 0), 0);
  say.textContent = `「${visible(head.words[picked])}」看得最多的是「${visible(head.words[best])}」，权重 ${row[best].toFixed(3)}；相当于平均看了 ${Math.exp(entropy).toFixed(1)} 个词元。`
    + (picked === head.words.length - 1 ? "它是最后一个，没有后面的词可看。" : leak > 0 ? `后面的词漏进来 ${(leak * 100).toFixed(1)}%。` : "后面的词一点也没有漏进来。")
    + (mask === "inf" && power === 0.5 ? `与组件算的最多相差 ${Math.max(...weights.flatMap((line, at) => line.map((value, column) => Math.abs(value - head.weights[at][column])))).toExponential(0)}。` : "");
}
stage.append(
  make("div", { class: "panel" }, make("div", { class: "slide" }, make("label", { for: "head", text: "哪一个头" }), select), scale.box,
    choice("后面的词", [["inf", "填 -∞（书上的）"], ["zero", "填 0"], ["none", "不遮"]], (value) => { mask = value; draw(); })),
  say, grids,
);
draw();
