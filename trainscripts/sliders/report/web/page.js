"use strict";
// Without this script the page shows all pictures, one below the other; with it, one picture per seed.
const numbers = (text) => text.split(" ").map(Number);
const label = (value) => String(Number(value.toPrecision(6)));

class Control {
  // A range input over a list of multipliers, with its output and tick labels.
  constructor(input, output, moved) {
    this.input = input;
    this.output = output;
    this.multipliers = numbers(input.dataset.multipliers);
    this.ticks = [...input.nextElementSibling.children];
    input.addEventListener("input", () => moved(this.index));
  }
  get index() {
    return Number(this.input.value);
  }
  show(index) {
    const value = label(this.multipliers[index]);
    this.input.value = index;
    this.input.setAttribute("aria-valuetext", `multiplier ${value}`);
    this.output.textContent = value;
    this.ticks.forEach((tick, i) => tick.classList.toggle("now", i === index));
  }
}

class Shot {
  // One seed's pictures, shown one at a time.
  constructor(figure) {
    this.images = [...figure.querySelectorAll("img")];
    this.base = Number(figure.dataset.base);
    this.marks = figure.closest("section").querySelectorAll(".chart .now");
    this.control = new Control(figure.querySelector("input"), figure.querySelector("output"), (i) => this.show(i));
    const hold = figure.querySelector(".hold");
    for (const name of ["pointerdown", "keydown"]) hold.addEventListener(name, (e) => isPress(e) && this.compare(true));
    for (const name of ["pointerup", "pointerleave", "keyup", "blur"]) hold.addEventListener(name, () => this.compare(false));
    hold.hidden = this.images.length < 2;
    figure.querySelector(".scale").hidden = this.images.length < 2;
    this.show(this.base);
  }
  show(index) {
    this.control.show(index);
    this.reveal(index);
    for (const mark of this.marks) {
      const x = numbers(mark.dataset.x)[index];
      mark.setAttribute("x1", x);
      mark.setAttribute("x2", x);
      mark.removeAttribute("hidden");
    }
  }
  reveal(index) {
    this.images.forEach((image, i) => {
      image.classList.toggle("shown", i === index);
      image.setAttribute("aria-hidden", String(i !== index));
    });
  }
  compare(on) {
    this.reveal(on ? this.base : this.control.index);
  }
  near(multiplier) {
    const distances = this.control.multipliers.map((m) => Math.abs(m - multiplier));
    this.show(distances.indexOf(Math.min(...distances)));
  }
}

const isPress = (event) => event.type === "pointerdown" || event.key === " " || event.key === "Enter";

document.documentElement.classList.add("scrubbing");
const shots = [...document.querySelectorAll(".shot")].map((figure) => new Shot(figure));
const bar = document.querySelector(".all");
const all = new Control(bar.querySelector("input"), bar.querySelector("output"), moveAll);
bar.hidden = all.multipliers.length < 2;
moveAll(Math.max(0, all.multipliers.indexOf(0)));

function moveAll(index) {
  all.show(index);
  for (const shot of shots) shot.near(all.multipliers[index]);
}

const STEPS = { ArrowLeft: -1, ArrowRight: 1 };
document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.key === "0") shots.forEach((shot) => shot.compare(true));
  if (event.target !== document.body || !(event.key in STEPS)) return; // a focused range input handles the key itself
  event.preventDefault();
  moveAll(Math.min(all.multipliers.length - 1, Math.max(0, all.index + STEPS[event.key])));
});
document.addEventListener("keyup", (event) => {
  if (event.key === "0") shots.forEach((shot) => shot.compare(false));
});
