"use strict";
// Without this script the page shows all rows; with it, the names of the ticked ones can be copied or saved.
const bar = document.querySelector(".ticked");
const [count, names, copy, save] = ["output", "textarea", "button", "a"].map((tag) => bar.querySelector(tag));
const boxes = [...document.querySelectorAll(".ladder input")];

function show() {
  const ticked = boxes.filter((box) => box.checked).map((box) => box.value);
  for (const box of boxes) box.closest("section").classList.toggle("bad", box.checked);
  count.textContent = `${ticked.length} of ${boxes.length} rows ticked`;
  names.value = ticked.join("\n");
  save.href = `data:text/plain;charset=utf-8,${encodeURIComponent(ticked.map((name) => `${name}\n`).join(""))}`;
  copy.textContent = "Copy names";
}

for (const box of boxes) {
  box.addEventListener("change", show);
  box.closest("section").querySelector(".strip").addEventListener("click", () => box.click());
}
copy.addEventListener("click", () => {
  names.select();
  document.execCommand("copy"); // unlike navigator.clipboard, every browser allows it on a page that was opened as a file
  copy.textContent = "Copied";
});
bar.hidden = false;
show();
