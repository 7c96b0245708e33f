// 五个动手的页面共用的几样：造元素、滑块、按钮、解开打包的数。
"use strict";
const stage = document.getElementById("touch-stage");
function make(tag, props = {}, ...inside) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name in made && typeof value !== "string") made[name] = value; else if (name === "text") made.textContent = value; else made.setAttribute(name, value);
  }
  made.append(...inside);
  return made;
}
// 一根滑块：左边说明，右边当前的值。show 把滑块的位置变成要显示的字；返回 {box, input, refresh}。
function slider(label, { min, max, step = 1, value, show = String, change }) {
  const id = "s" + document.querySelectorAll("input").length + label.length;
  const shown = make("output", { for: id });
  const input = make("input", { type: "range", id, min: String(min), max: String(max), step: String(step), value: String(value) });
  const refresh = () => { shown.textContent = show(Number(input.value)); input.setAttribute("aria-valuetext", shown.textContent); };
  input.addEventListener("input", () => { refresh(); change(Number(input.value)); });
  refresh();
  return { box: make("div", { class: "slide" }, make("label", { for: id, text: label }), input, shown), input, refresh };
}
function choice(label, options, change) { // 一组单选：options 是 [值, 文字]
  const name = "c" + document.querySelectorAll("fieldset").length;
  const box = make("fieldset", { class: "choice" }, make("legend", { text: label }));
  options.forEach(([value, words], at) => {
    const input = make("input", { type: "radio", name, value: String(value), checked: at === 0 });
    input.addEventListener("change", () => change(value));
    box.append(make("label", {}, input, " " + words));
  });
  return box;
}
function button(text, press) {
  const made = make("button", { type: "button", text, class: "press" });
  made.addEventListener("click", press);
  return made;
}
const unpack = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;
function halves(buffer) { // float16 → 普通的数
  return Float64Array.from(new Uint16Array(buffer), (bits) => {
    const sign = bits & 0x8000 ? -1 : 1, power = (bits >> 10) & 31, rest = bits & 1023;
    return sign * (power === 0 ? rest * 2 ** -24 : power === 31 ? (rest ? NaN : Infinity) : (1 + rest / 1024) * 2 ** (power - 15));
  });
}
function softmax(numbers) { // 先减最大的，e 的指数才不会溢出；-Infinity 正好变成 0
  const top = numbers.reduce((one, other) => Math.max(one, other), -Infinity);
  const powers = numbers.map((number) => Math.exp(number - top));
  const sum = powers.reduce((one, other) => one + other, 0);
  return powers.map((power) => power / sum);
}
const visible = (text) => text.replace(/ /g, "␣").replace(/\n/g, "↵") || "∅"; // 空格看得见
