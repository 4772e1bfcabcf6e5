// Sorting, buttons, and what connects the page with its data.

const data = JSON.parse(document.getElementById("data").textContent);

/** The number that a cell begins with; cells without one come last. */
function numberOf(cell) {
  const found = cell.textContent.trim().replace(/,/g, "").replace("−", "-").match(/^-?\d+(\.\d+)?/);
  return found ? Number(found[0]) : null;
}

function sortRows(table, column, descending) {
  const rows = [...table.tBodies[0].rows];
  const keys = new Map(rows.map((row, place) => [row, { number: numberOf(row.cells[column]), text: row.cells[column].textContent.trim(), place }]));
  const isNumeric = column > 0 && rows.some((row) => keys.get(row).number !== null);
  const sign = descending ? -1 : 1;
  rows.sort((one, other) => {
    const a = keys.get(one), b = keys.get(other);
    if (!isNumeric) return sign * a.text.localeCompare(b.text);
    if (a.number === null || b.number === null) return (a.number === null) - (b.number === null);
    return sign * (a.number - b.number) || a.place - b.place;
  });
  table.tBodies[0].append(...rows);
  [...table.tHead.rows[0].cells].forEach((cell, index) => {
    if (index === column) cell.setAttribute("aria-sort", descending ? "descending" : "ascending");
    else cell.removeAttribute("aria-sort");
  });
}

/** Headings become buttons; where the table is cards, a list does the same. */
function makeSortable(table) {
  const heads = [...table.tHead.rows[0].cells], label = element("label", "Sort by ", "sorting"), select = element("select");
  heads.forEach((head, column) => {
    const button = element("button", head.textContent);
    button.type = "button";
    button.addEventListener("click", () => sortRows(table, column, head.getAttribute("aria-sort") === "ascending"));
    const option = element("option", head.textContent);
    option.value = column;
    head.replaceChildren(button);
    select.append(option);
  });
  select.addEventListener("change", () => sortRows(table, Number(select.value), false));
  label.append(select);
  table.before(label);
}

/** A cell as spreadsheets read it: quoted, and never a formula. */
function csvCell(value) {
  const text = value === null || value === undefined ? "" : String(value);
  const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replace(/"/g, '""')}"` : safe;
}

function csv(part) {
  const rows = [["recipe", "mode", "seed", "finished", "epoch", part.curves.title]];
  for (const group of part.curves.groups) {
    for (const run of group.runs) epochsOf(run).forEach((epoch, index) => rows.push([part.recipe, group.name, run.seed, run.done, epoch, run.y[index]]));
  }
  return rows.map((row) => row.map(csvCell).join(",")).join("\r\n") + "\r\n";
}

function download(part) {
  const link = element("a");
  link.href = URL.createObjectURL(new Blob(["\ufeff", csv(part)], { type: "text/csv" }));
  link.download = `${part.recipe.replace(/[^\w.-]/g, "_").slice(0, 60)}.csv`;
  link.click();
  URL.revokeObjectURL(link.href);
}

async function copyCommands(article, button) {
  const blocks = [...article.querySelectorAll(".command")];
  try {
    await navigator.clipboard.writeText(blocks.map((block) => block.textContent).join("\n"));
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(blocks[0]);
    button.textContent = "Selected: copy it with the keyboard";
  }
}

const drawers = { curves: drawCurves, heatmap: drawHeatmap, block: drawBlock, plane: (part, _, node) => drawPlane(part, node), reliability: (part, _, node) => drawReliability(part, node) };

function connect(article) {
  const part = data.parts[Number(article.dataset.part)];
  const on = (selector, event, act) => article.querySelectorAll(selector).forEach((node) => node.addEventListener(event, () => act(node)));
  const redrawn = (kind) => () => draw(article.querySelector(`[data-chart="${kind}"]`));
  article.querySelectorAll("[data-chart]").forEach((node) => chart(node, (place) => drawers[node.dataset.chart](part, article, place)));
  article.querySelectorAll("[data-sortable]").forEach(makeSortable);
  on('[data-mode], [data-do="runs"], [data-do="log"]', "change", redrawn("curves"));
  on('[data-do="order"]', "change", redrawn("heatmap"));
  on('[data-do="search"]', "input", (input) => search(part, article, input.value));
  on('[data-do="copy"]', "click", (button) => copyCommands(article, button));
  on('[data-do="csv"]', "click", () => download(part));
  if (part.labels) showNearest(part, article, part.labels.plane.labels[0]);
}

/** While runs go on: ask for the page again once there is something new. */
function follow(version) {
  setInterval(async () => {
    try {
      const now = await (await fetch("version", { cache: "no-store" })).text();
      if (now !== version) location.reload();
    } catch { /* the server has ended: what is shown stays */ }
  }, 3000);
}

document.querySelectorAll("article[data-part]").forEach(connect);
document.querySelectorAll('[data-do="theme"]').forEach((button) => button.addEventListener("click", switchTheme));
if (data.version) follow(data.version);
