// The label map, and the search for a label's nearest ones.

const SCALES = {
  light: [[0, "#ffffff"], [0.08, "#dbe9f6"], [0.25, "#9ecae1"], [0.55, "#3182bd"], [1, "#08306b"]],
  dark: [[0, "#17181a"], [0.08, "#1d3550"], [0.25, "#2a5f93"], [0.55, "#5aa5e0"], [1, "#e3f2ff"]],
};
const MOST_FOUND = 20, NUM_NEAREST = 10, PARTS = 1e5;

/** Labels near a label, as [label, share], the largest first; null where the page has no row of it. */
function nearest(labels, label) {
  if (labels.matrix) {
    const found = labels.matrix[label].map((share, other) => [other, share]).filter(([other]) => other !== label);
    return found.sort((one, other) => other[1] - one[1] || one[0] - other[0]).slice(0, NUM_NEAREST);
  }
  const row = labels.rows ? labels.rows.indexOf(label) : label;
  if (row < 0) return null;
  const count = labels.num_nearest, from = row * count;
  return Array.from({ length: count }, (_, place) => [labels.indices[from + place], labels.shares[from + place] / PARTS]);
}

function heatmapTrace(values, text) {
  return { type: "heatmap", z: values, text, hoverongaps: true, hovertemplate: "%{text}<extra></extra>", zmin: 0, xgap: values.length > 60 ? 0 : 1, ygap: values.length > 60 ? 0 : 1,
    colorscale: SCALES[isDark() ? "dark" : "light"], colorbar: { thickness: 12, len: 0.8, outlinewidth: 0, title: { text: "share", side: "right" } } };
}

/** A square of positions in an order, with names beside it where they can be read. */
function squareLayout(node, names, more) {
  const width = Math.min(node.clientWidth, 920), inside = width - 190, cell = inside / names.length;
  const size = Math.max(7, Math.min(12, cell));
  const ticks = cell >= 6 ? { tickvals: names.map((_, place) => place), ticktext: names.map((name) => plain(name, 18)), tickfont: { size } } : { showticklabels: false };
  const axis = { ...ticks, showgrid: false, zeroline: false, constrain: "domain" };
  return { height: Math.max(320, 0.87 * width), plot_bgcolor: colours().empty, margin: { l: 20, r: 10, t: 10, b: 20 },
    xaxis: { ...axis, title: { text: "share of the soft label" }, tickangle: 90, scaleanchor: "y" }, yaxis: { ...axis, title: { text: "label" }, autorange: "reversed" }, ...more };
}

/** Frames around the groups of at least two labels that stand side by side. */
function frames(order, groups) {
  const found = [], line = { color: colours().ink, width: 1.2 };
  for (let start = 0, end = 1; end <= order.length; end++) {
    if (end < order.length && groups[order[end]] === groups[order[start]]) continue;
    if (end - start > 1) found.push({ type: "rect", x0: start - 0.5, x1: end - 0.5, y0: start - 0.5, y1: end - 0.5, line });
    start = end;
  }
  return found;
}

function drawHeatmap(part, article, node) {
  const { names, matrix, orders, groups } = part.labels, kind = article.querySelector('[data-do="order"]').value;
  const order = orders[kind];
  const values = order.map((row) => order.map((column) => (row === column ? null : matrix[row][column])));
  const text = order.map((row) => order.map((column) => (row === column
    ? `${plain(names[row])}: own share ${percent(matrix[row][row])}`
    : `${plain(names[row])} → ${plain(names[column])}: ${percent(matrix[row][column])}`)));
  const shapes = kind === "similarity" && new Set(groups).size > 1 ? frames(order, groups) : [];
  show(node, [heatmapTrace(values, text)], squareLayout(node, order.map((label) => names[label]), { shapes }));
  node.removeAllListeners("plotly_hover");
  node.on("plotly_hover", ({ points }) => showStrip(part, article, [order[points[0].y], order[points[0].x]]));
}

/** Test images of the pair under the pointer. */
function showStrip(part, article, pair) {
  const strip = article.querySelector("[data-strip]");
  if (!Object.keys(part.images).length) return;
  strip.hidden = false;
  strip.replaceChildren(...[...new Set(pair)].map((label) => {
    const group = element("span");
    for (const address of part.images[label] || []) {
      const image = element("img");
      image.src = address;
      image.alt = "";
      group.append(image);
    }
    group.append(name_element(shortened(part.labels.names[label])));
    return group;
  }));
}

function search(part, article, text) {
  const wanted = text.trim().toLowerCase(), { names } = part.labels;
  const found = [];
  for (let label = 0; label < names.length && wanted && found.length < MOST_FOUND; label++) {
    if (names[label].toLowerCase().includes(wanted)) found.push(label);
  }
  const list = article.querySelector("datalist");
  list.replaceChildren(...found.map((label) => { const option = element("option"); option.value = names[label]; return option; }));
  const exact = names.indexOf(text.trim()) >= 0 ? names.indexOf(text.trim()) : names.findIndex((name) => name.toLowerCase() === wanted);
  const chosen = exact >= 0 ? exact : found[0];
  const says = article.querySelector("[data-says]");
  if (chosen === undefined) says.textContent = wanted ? "No label has these letters." : "";
  else showNearest(part, article, chosen);
}

function showNearest(part, article, label) {
  const found = nearest(part.labels, label), { names } = part.labels;
  article.dataset.label = label;
  const says = article.querySelector("[data-says]");
  says.replaceChildren("Nearest to ", name_element(shortened(names[label], 60)), found ? ":" : ": this page has no row of so rare a label; labelemb neighbors RUN LABEL tells.");
  const largest = Math.max(...(found || []).map(([, share]) => share), 1e-9);
  article.querySelector("[data-bars]").replaceChildren(...(found || []).map(([other, share]) => {
    const item = element("li"), track = element("span", "", "track"), bar = element("span");
    bar.style.width = `${(100 * share) / largest}%`;
    track.append(bar);
    const text = name_element(shortened(names[other], 40));
    text.title = names[other].slice(0, 500);
    item.append(text, track, element("span", percent(share), "value"));
    return item;
  }));
  const block = article.querySelector('[data-chart="block"]');
  if (block && charts.has(block) && charts.get(block).drawn) draw(block);
}

/** The chosen label and its nearest ones; blank where a label is not among the nearest of another. */
function drawBlock(part, article, node) {
  const { labels } = part, label = Number(article.dataset.label), found = nearest(labels, label) || [];
  const shown = [label, ...found.map(([other]) => other)], names = shown.map((each) => labels.names[each]);
  const rows = shown.map((row) => new Map(nearest(labels, row) || []));
  const values = rows.map((row) => shown.map((column) => (row.has(column) ? row.get(column) : null)));
  const text = values.map((row, y) => row.map((value, x) => `${plain(names[y])} → ${plain(names[x])}: ${value === null ? "not among the nearest" : percent(value)}`));
  show(node, [heatmapTrace(values, text)], squareLayout(node, names, {}));
}
