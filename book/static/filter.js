// Long tables get a field above the first of them: rows without all of its words are hidden, and sections left empty.
(() => {
  "use strict";

  const prepare = () => {
    const tables = [...document.querySelectorAll("table.filterable")];
    if (!tables.length) return;
    const rows = tables.flatMap((table) => [...table.tBodies[0].rows]);
    const texts = rows.map((row) => row.textContent.toLowerCase());

    const field = document.createElement("input");
    field.type = "search";
    field.id = "table-filter";
    field.placeholder = "such as: pgd, reproduce, to come";
    const label = document.createElement("label");
    label.htmlFor = field.id;
    label.textContent = "Show only rows with ";
    const count = document.createElement("span");
    count.setAttribute("role", "status");
    const box = document.createElement("p");
    box.className = "table-filter";
    box.append(label, field, " ", count);
    (tables[0].closest("section") ?? tables[0]).before(box);

    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      rows.forEach((row, place) => {
        row.hidden = !words.every((word) => texts[place].includes(word));
        shown += row.hidden ? 0 : 1;
      });
      for (const table of tables) {
        const empty = [...table.tBodies[0].rows].every((row) => row.hidden);
        (table.closest("section") ?? table).hidden = empty;
      }
      count.textContent = words.length ? `${shown} of ${rows.length} rows` : "";
    });
  };

  document.addEventListener("DOMContentLoaded", prepare);
})();
