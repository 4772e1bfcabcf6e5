// Light or dark: as the system has it, until the button says otherwise. Charts are drawn when they come near the screen,
// and again where colours or widths change.

const charts = new Map(); // node -> { draw, drawn }
const systemIsDark = matchMedia("(prefers-color-scheme: dark)");
const printing = matchMedia("print");

function isDark() {
  if (printing.matches) return false;
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : systemIsDark.matches;
}

function switchTheme() {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  redraw();
}

function colours() {
  return isDark()
    ? { ink: "#e8e8e8", soft: "#a8a8a8", line: "#3f4246", paper: "#17181a", empty: "#303236" }
    : { ink: "#1c1c1c", soft: "#595959", line: "#d0d0d0", paper: "#ffffff", empty: "#e4e4e4" };
}

/** What all charts share; `more` goes over it. */
function layout(more) {
  const { ink, soft, line, paper } = colours();
  const axis = { gridcolor: line, linecolor: soft, zerolinecolor: line, tickcolor: soft, automargin: true };
  const hover = { bgcolor: paper, bordercolor: soft, align: "left", font: { color: ink, size: 13 } };
  const { xaxis = {}, yaxis = {}, ...rest } = more;
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, size: 12, family: "system-ui, sans-serif" },
    margin: { l: 56, r: 12, t: 12, b: 48 }, hovermode: "closest", hoverlabel: hover, showlegend: false, modebar: { color: soft, activecolor: ink, bgcolor: "rgba(0,0,0,0)" },
    ...rest, xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis },
  };
}

function show(node, traces, more) {
  const options = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
  if (printing.matches) more = { ...more, width: Math.min(node.clientWidth, 680) };
  return Plotly.react(node, traces, layout(more), options);
}

/** Register a chart; it is drawn when it comes near the screen. */
function chart(node, draw) {
  charts.set(node, { draw, drawn: false });
  nearby.observe(node);
}

/** Plotly is in the page as text until the first chart is drawn: words and tables need not wait for it. */
function needLibrary() {
  if (window.Plotly) return;
  const script = document.createElement("script");
  script.textContent = document.getElementById("library").textContent;
  document.head.append(script); // runs at once; the page's policy knows its sum
}

function draw(node) {
  needLibrary();
  const found = charts.get(node);
  found.drawn = true;
  found.draw(node);
}

function redraw() {
  for (const [node, { drawn }] of charts) if (drawn) draw(node);
}

const nearby = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) if (isIntersecting) requestAnimationFrame(() => setTimeout(() => charts.get(target).drawn || draw(target)));
}, { rootMargin: "400px" });

systemIsDark.addEventListener("change", redraw);
addEventListener("beforeprint", () => { for (const node of charts.keys()) draw(node); });
printing.addEventListener("change", () => redraw());
