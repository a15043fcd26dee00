"use strict";
function keyOf(row, column) {
  return row.cells[column].textContent.trim();
}
function compared(one, other) {
  const numbers = [one, other].map((text) => parseFloat(text.replace(/^</, "")));
  if (numbers.every((number) => !Number.isNaN(number)) && numbers[0] !== numbers[1]) return numbers[0] - numbers[1];
  return one.localeCompare(other, "en", { numeric: true });
}
for (const head of document.querySelectorAll("th")) {
  head.firstElementChild.addEventListener("click", () => {
    const body = head.closest("table").tBodies[0];
    const up = head.getAttribute("aria-sort") !== "ascending";
    const rows = Array.from(body.rows);
    rows.sort((one, other) => {
      const keys = [keyOf(one, head.cellIndex), keyOf(other, head.cellIndex)];
      if (!keys[0] || !keys[1]) return !keys[0] - !keys[1];
      return (up ? 1 : -1) * compared(keys[0], keys[1]);
    });
    for (const each of head.parentElement.cells) each.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    body.append(...rows);
  });
}
