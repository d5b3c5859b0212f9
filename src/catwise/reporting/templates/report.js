"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const numeric = head.dataset.kind === "number";
      const now = head.getAttribute("aria-sort");
      const up = now ? now === "descending" : !numeric;
      const key = (row) => row.cells[column].dataset.key ?? row.cells[column].textContent;
      const compare = (a, b) => numeric ? Number(a) - Number(b) : a.localeCompare(b);
      const rows = Array.from(body.rows).map((row) => [key(row), row]);
      rows.sort(([a, first], [b, second]) => {
        if (numeric) {
          if (a === "" || b === "") {
            return (a === "") - (b === "") || first.dataset.number - second.dataset.number;
          }
        }
        return (up ? compare(a, b) : compare(b, a)) || first.dataset.number - second.dataset.number;
      });
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      body.append(...rows.map(([, row]) => row));
    });
  });
}
