"use strict";
// A drawing of a generation is a slider: it goes from step to step and reads the step's row of the table out.
for (const course of document.querySelectorAll(".course")) {
  const plot = course.querySelector(".plot");
  const cursor = course.querySelector(".cursor");
  const readout = course.querySelector(".readout");
  const heads = Array.from(course.querySelectorAll("thead th"), (head) => head.textContent);
  const steps = new Map();
  for (const row of course.querySelectorAll("tbody tr")) {
    const step = row.cells[0].textContent;
    steps.set(step, [...(steps.get(step) || []), row]);
  }
  const rows = [...steps.values()];
  let at = -1;

  const told = (row) =>
    Array.from(row.cells, (cell, n) => [heads[n], cell.textContent])
      .filter(([head, text], n) => n > 0 && text !== "–" && text !== "")
      .map(([head, text]) => (head === "decision" ? text : `${head} ${text}`))
      .join(" · ");

  const show = (step) => {
    at = Math.max(0, Math.min(rows.length - 1, step));
    const axis = plot.querySelector(".axis");
    cursor.hidden = false;
    cursor.style.left = `${axis.offsetLeft + (axis.offsetWidth * at) / rows.length}px`;
    cursor.style.width = `${Math.max(2, axis.offsetWidth / rows.length)}px`;
    const text = `Step ${rows[at][0].cells[0].textContent} · ${rows[at].map(told).join(" · ")}`;
    readout.textContent = text;
    readout.classList.add("on");
    plot.setAttribute("aria-valuenow", at);
    plot.setAttribute("aria-valuetext", text);
  };

  const point = (event) => {
    const box = plot.querySelector(".axis").getBoundingClientRect();
    show(Math.floor(((event.clientX - box.left) / box.width) * rows.length));
  };
  plot.addEventListener("pointermove", point);
  plot.addEventListener("pointerdown", point);
  plot.addEventListener("keydown", (event) => {
    const moves = { ArrowRight: at + 1, ArrowUp: at + 1, ArrowLeft: at - 1, ArrowDown: at - 1, Home: 0, End: rows.length - 1 };
    if (event.key in moves) {
      show(moves[event.key]);
      event.preventDefault();
    }
  });
}
