"use strict";

// ------------------------------------------------------------------------------- the trials behind a number
// `#trials=0-3,8` shows these rows of the trial table alone, `#trial-8` opens one; any other fragment shows all.

const trials = [...document.querySelectorAll(".trials > tbody")];
const list = document.getElementById("trial-list"), shown = document.getElementById("shown");
const showAll = document.getElementById("show-all");

function follow() {
  const fragment = decodeURIComponent(location.hash.slice(1));
  const rows = fragment.startsWith("trials=") ? readRanges(fragment.slice(7)) : null;
  filter(rows);
  const row = /^trial-\d+$/.test(fragment) && document.getElementById(fragment);
  if (row) open(row.parentElement, true);
  if (rows && rows.size === 1) open(trials[[...rows][0]], true);
  if (rows || row) list.open = true;
  const place = rows ? document.getElementById("trials-title") : row || document.getElementById(fragment);
  if (!place) return;
  place.scrollIntoView();
  if (rows || row) place.focus({preventScroll: true});
}

function readRanges(text) {
  const rows = new Set();
  for (const range of text.split(",")) {
    const [first, last = first] = range.split("-").map(Number);
    for (let row = first; row <= last && row < trials.length; row++) rows.add(row);
  }
  return rows;
}

function filter(rows) {
  trials.forEach((trial, row) => (trial.hidden = rows !== null && !rows.has(row)));
  shown.textContent = rows ? `${rows.size} of ${trials.length} trials are shown: those behind the number or point.` : "";
  showAll.hidden = !rows;
}

function open(trial, wanted) {
  if (!trial) return;
  const opened = trial.classList.toggle("open", wanted), button = trial.querySelector(".toggle");
  button.setAttribute("aria-expanded", opened);
  button.textContent = opened ? "−" : "+";
}

for (const link of document.querySelectorAll("a[data-trials]")) {
  link.href = `#trials=${link.dataset.trials}`;
  link.addEventListener("click", () => link.hash === location.hash && follow());
}
list.addEventListener("click", ({target}) => {
  if (target.matches(".toggle")) open(target.closest("tbody"));
  if (target.matches(".copy")) copy(target.previousElementSibling.textContent, target);
});
addEventListener("hashchange", follow);

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "copied";
  } catch {  // not allowed: the text is marked, for Ctrl-C
    getSelection().selectAllChildren(button.previousElementSibling);
    button.textContent = "marked";
  }
  setTimeout(() => (button.textContent = "copy"), 2000);
}

// ------------------------------------------------------------------------------------------------- figures
// They take the page's colours, and follow when the screen turns dark or the page is printed. Those that hold groups
// of trials lead to them: by a click on a point, or by arrow keys and Enter. Page up and down move a slider.

const paper = matchMedia("print"), PAPER_WIDTH = 660;  // of A4, in CSS pixels, within its margins
const plots = [];

function draw(script) {
  const plot = document.getElementById(script.dataset.figure), spec = JSON.parse(script.textContent);
  plots.push(plot);
  const config = {displaylogo: false, responsive: true, displayModeBar: false};
  Plotly.newPlot(plot, spec.data, {...spec.layout, autosize: true}, config);
  plot.firstElementChild.setAttribute("aria-hidden", "true");  // the figure's description stands for it
  const groups = spec.layout.meta && spec.layout.meta.trials;
  if (groups) lead(plot, groups);
  if (spec.layout.sliders) plot.addEventListener("keydown", (event) => slide(plot, event));
}

function lead(plot, groups) {
  const points = findPoints(plot);
  let at = -1;
  const show = (group) => groups[group] && (location.hash = `trials=${groups[group]}`);
  plot.on("plotly_click", ({points: [point]}) => point.customdata && show(point.customdata[0]));
  plot.addEventListener("keydown", (event) => {
    const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
    if (event.key === "Enter" && points[at]) show(points[at].group);
    if (event.key === "Escape") {
      at = -1;
      Plotly.Fx.unhover(plot);
    }
    if (!step || !points.length) return;
    event.preventDefault();
    at = at < 0 ? (step > 0 ? 0 : points.length - 1) : (at + step + points.length) % points.length;
    Plotly.Fx.hover(plot, [points[at]], points[at].panel);
    setTimeout(say, 100);  // Plotly draws its label within 50 ms
  });
  function say() {
    const texts = [...plot.querySelectorAll(".hoverlayer text")];
    const lines = texts.flatMap((text) => (text.children.length ? [...text.children] : text));
    const said = lines.map((line) => line.textContent).join(", ");
    document.getElementById("live").textContent = `${said}. Point ${at + 1} of ${points.length}.`;
  }
}

function slide(plot, event) {
  const by = {PageDown: 1, PageUp: -1}[event.key], [{active, steps, currentvalue}] = plot.layout.sliders;
  if (!by) return;
  event.preventDefault();
  const to = Math.min(Math.max(active + by, 0), steps.length - 1);
  Plotly[steps[to].method](plot, ...steps[to].args);
  Plotly.relayout(plot, "sliders[0].active", to);
  document.getElementById("live").textContent = currentvalue.prefix + steps[to].label;
}

function findPoints(plot) {
  const points = [];
  plot._fullData.forEach((trace, curveNumber) => {
    if (trace.visible !== true || !trace.customdata) return;
    const panel = trace.subplot || (trace.xaxis ? trace.xaxis + trace.yaxis : "xy");
    const add = (data, place) => data && data[0] >= 0 && points.push({curveNumber, group: data[0], panel, ...place});
    if (trace.type !== "heatmap") {
      [...trace.customdata].forEach((data, pointNumber) => add(data, {pointNumber}));
      return;
    }
    const {x, y} = plot.calcdata[curveNumber][0], middle = (edges, n) => (edges[n] + edges[n + 1]) / 2;
    trace.customdata.forEach((cells, row) =>
      cells.forEach((data, column) => add(data, {xval: middle(x, column), yval: middle(y, row)})));
  });
  return points;
}

function paint() {
  const style = getComputedStyle(document.documentElement);
  const text = style.getPropertyValue("--text").trim(), line = style.getPropertyValue("--line").trim();
  for (const plot of plots) {
    const update = {"font.color": text};
    for (const key of Object.keys(plot.layout))
      if (/^[xy]axis/.test(key)) Object.assign(update, {[key + ".gridcolor"]: line, [key + ".linecolor"]: line});
    Object.assign(update, paper.matches ? {width: Math.min(PAPER_WIDTH, plot.clientWidth)} : {width: null, autosize: true});
    Plotly.relayout(plot, update);
  }
}

document.querySelectorAll("script[data-figure]").forEach(draw);
paint();
follow();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
paper.addEventListener("change", paint);
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => (one.open = true)));
