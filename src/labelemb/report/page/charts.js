// Error curves, reliability, and the labels in the plane.

function epochsOf(line) {
  return line.x || line.y.map((_, index) => index + 1);
}

/** Several runs as one line with gaps, so that hundreds of them stay quick. */
function joined(runs) {
  const x = [], y = [], seed = [];
  for (const run of runs) {
    x.push(...epochsOf(run), null);
    y.push(...run.y, null);
    seed.push(...run.y.map(() => run.seed), null);
  }
  return { x, y, customdata: seed };
}

function curveTraces(part, group, everyRun) {
  const look = part.looks[group.name], color = isDark() ? look.dark : look.light, name = plain(group.name);
  const hover = "%{fullData.name}, seed %{customdata}<br>epoch %{x}: %{y:.4~g}<extra></extra>";
  const traces = [];
  const faint = Math.min(0.55, 0.2 + 1.5 / group.runs.length);
  for (const done of everyRun || !group.done ? [true, false] : []) {
    const runs = group.runs.filter((run) => run.done === done && (run.done ? group.runs.length > 1 : true));
    if (runs.length) traces.push({ ...joined(runs), name, type: "scatter", mode: "lines", hovertemplate: hover,
      opacity: done ? faint : 0.9, line: { color, width: 1, dash: done ? "solid" : "dot" } });
  }
  if (group.mean.y.length && group.done) {
    const runs = group.runs.filter((run) => run.done).length;
    const of = runs > 1 ? `mean of ${runs} runs` : `seed ${group.runs[0].seed}`;
    traces.push({ x: epochsOf(group.mean), y: group.mean.y, name, type: "scatter", line: { color, width: 2.6, dash: look.dash },
      mode: group.mean.y.length > 1 ? "lines" : "markers", hovertemplate: `%{fullData.name}, ${of}<br>epoch %{x}: %{y:.4~g}<extra></extra>` });
  }
  return traces;
}

/** The range of what comes after the first epochs, which lie far off; as plotly takes it, in powers where logarithmic. */
function curveRange(groups, from, isLog) {
  const values = [];
  for (const group of groups) {
    for (const run of group.runs) {
      const epochs = epochsOf(run), start = Math.min(from * epochs[epochs.length - 1], epochs[epochs.length - 1]);
      run.y.forEach((value, index) => { if (epochs[index] >= start && (!isLog || value > 0)) values.push(value); });
    }
  }
  if (!values.length) return undefined;
  const scale = isLog ? Math.log10 : (value) => value;
  const [low, high] = values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
  const room = 0.04 * (scale(high) - scale(low)) || 0.1;
  return [scale(low) - room, scale(high) + room];
}

/** Some five round numbers between both ends of a logarithmic axis, which plotly leaves bare where it is short. */
function logTicks([low, high]) {
  const [bottom, top] = [10 ** low, 10 ** high];
  if (top / bottom < 4) {
    const rough = (top - bottom) / 5, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough);
    return Array.from({ length: 12 }, (_, index) => (Math.ceil(bottom / step) + index) * step).filter((value) => value <= top);
  }
  const found = [];
  for (let power = Math.floor(low); power <= Math.ceil(high); power++) found.push(...[1, 2, 5].map((each) => each * 10 ** power));
  return found.filter((value) => value >= bottom && value <= top);
}

function drawCurves(part, article, node) {
  const on = (name) => article.querySelector(`[data-do="${name}"]`).checked;
  const boxes = [...article.querySelectorAll("[data-mode]")];
  const groups = part.curves.groups.filter((_, index) => boxes[index].checked);
  const isLog = on("log"), range = curveRange(groups, part.curves.from, isLog);
  const tickvals = isLog && range ? logTicks(range) : undefined;
  const ticks = tickvals ? { tickvals, ticktext: tickvals.map((value) => String(Number(value.toPrecision(3)))) } : {};
  show(node, groups.flatMap((group) => curveTraces(part, group, on("runs"))), {
    height: 440, xaxis: { title: { text: "epoch" }, rangemode: "tozero" },
    yaxis: { title: { text: part.curves.title }, type: isLog ? "log" : "linear", range, ...ticks },
  });
}

function drawReliability(part, node) {
  const even = { x: [0, 100], y: [0, 100], type: "scatter", mode: "lines", hoverinfo: "skip", showlegend: false, line: { color: colours().soft, width: 1, dash: "dash" } };
  const lines = part.reliability.map((each) => {
    const look = part.looks[each.name];
    return { x: each.x, y: each.y, customdata: each.n, name: plain(each.name), type: "scatter", mode: "lines+markers",
      line: { color: isDark() ? look.dark : look.light, width: 1.8, dash: look.dash },
      hovertemplate: "%{fullData.name}<br>sure of it: %{x:.1f} %<br>right: %{y:.1f} %<br>%{customdata} items<extra></extra>" };
  });
  const legend = { orientation: "h", y: -0.2 };
  show(node, [even, ...lines.map((line) => ({ ...line, showlegend: true }))], { height: 460, legend, showlegend: true,
    xaxis: { title: { text: "confidence %" }, range: [0, 102] }, yaxis: { title: { text: "accuracy %" }, range: [0, 102] } });
}

const GROUP_COLORS = [["#0072B2", "#4DA3E0"], ["#C04F00", "#F0803C"], ["#007F5C", "#2FC39A"], ["#B0508A", "#E09CC4"], ["#A86E00", "#E69F00"], ["#4D4D4D", "#C8C8C8"]];
const GROUP_SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "star", "triangle-down"];
const MOST_WRITTEN = 110;

function drawPlane(part, node) {
  const { plane, names } = part.labels;
  const words = plane.labels.map((label) => plain(names[label], 18));
  show(node, [{ x: plane.x, y: plane.y, text: words, type: "scatter", mode: words.length <= MOST_WRITTEN ? "markers+text" : "markers",
    textposition: "top center", textfont: { size: words.length > 40 ? 9 : 12 }, hovertemplate: "%{text}<extra></extra>",
    marker: { size: 8, color: plane.groups.map((group) => GROUP_COLORS[group % GROUP_COLORS.length][isDark() ? 1 : 0]),
      symbol: plane.groups.map((group) => GROUP_SYMBOLS[group % GROUP_SYMBOLS.length]) } }],
  { height: node.clientWidth < 600 ? 420 : 600, xaxis: { showticklabels: false, ticks: "", zeroline: false }, yaxis: { showticklabels: false, ticks: "", zeroline: false, scaleanchor: "x" } });
}
