"use strict";
// Tables sort by the column whose heading is pressed; numbers by value, anything else as text.
for (const table of document.querySelectorAll("table.data")) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const first = heading.classList.contains("numeric") ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = heading.getAttribute("aria-sort") === first ? other : first;
      headings.forEach((each) => each.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const numeric = heading.classList.contains("numeric");
      const value = (row) => row.cells[column].dataset.value;
      const compare = (a, b) => (numeric ? value(a) - value(b) : value(a).localeCompare(value(b)));
      body.append(...[...body.rows].sort((a, b) => sign * compare(a, b)));
    });
  });
}

for (const input of document.querySelectorAll("input[data-filters]")) {
  const rows = [...document.getElementById(input.dataset.filters).tBodies[0].rows];
  input.addEventListener("input", () => {
    const wanted = input.value.trim().toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
}

const zoom = document.getElementById("zoom");
const zoomed = zoom.querySelector(".zoomed");
document.addEventListener("click", (event) => {
  const thumb = event.target.closest("button.thumb");
  if (!thumb) return;
  const image = thumb.querySelector("img");
  const caption = thumb.parentElement.querySelector("figcaption");
  zoomed.replaceChildren(...(image ? [image.cloneNode()] : []), caption.cloneNode(true));
  zoom.showModal();
});
zoom.addEventListener("click", (event) => {
  if (event.target === zoom || event.target.closest(".close")) zoom.close();
});
