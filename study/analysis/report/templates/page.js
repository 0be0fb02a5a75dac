"use strict";

// ------------------------------------------------------------------------------- the trials behind a number
// `#trials=0-3,8` shows only these rows of the trial table, `#trial-8` opens one row; any other hash shows all rows.

const trials = [...document.querySelectorAll(".trials > tbody")];
const list = document.getElementById("trial-list"), shown = document.getElementById("shown");
const showAll = document.getElementById("show-all");

function applyHash() {
  const fragment = decodeURIComponent(location.hash.slice(1));
  const rows = fragment.startsWith("trials=") ? readRanges(fragment.slice(7)) : null;
  filterTrials(rows);
  const row = /^trial-\d+$/.test(fragment) && document.getElementById(fragment);
  if (row) openTrial(row.parentElement, true);
  if (rows && rows.size === 1) openTrial(trials[[...rows][0]], true);
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

function filterTrials(rows) {
  trials.forEach((trial, row) => (trial.hidden = rows !== null && !rows.has(row)));
  shown.textContent = rows ? `Shown: ${rows.size} of ${trials.length}, those behind the number or point.` : "";
  showAll.hidden = !rows;
}

function openTrial(trial, wanted) {
  if (!trial) return;
  const opened = trial.classList.toggle("open", wanted), button = trial.querySelector(".toggle");
  button.setAttribute("aria-expanded", opened);
  button.textContent = opened ? "−" : "+";
}

for (const link of document.querySelectorAll("a[data-trials]")) {
  link.href = `#trials=${link.dataset.trials}`;
  link.addEventListener("click", () => link.hash === location.hash && applyHash());
}
list.addEventListener("click", ({target}) => {
  if (target.matches(".toggle")) openTrial(target.closest("tbody"));
  if (target.matches(".copy")) copyText(target.previousElementSibling.textContent, target);
});
addEventListener("hashchange", applyHash);

async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "copied";
  } catch {  // the browser forbids it: select the text, for Ctrl-C
    getSelection().selectAllChildren(button.previousElementSibling);
    button.textContent = "selected";
  }
  setTimeout(() => (button.textContent = "copy"), 2000);
}

// ------------------------------------------------------------------------------------------------- figures
// Figures have the page's colours, also after a switch to dark mode and in print. Points of figures with groups of
// trials link to these: by click, or by arrow keys and Enter. Page up and Page down move a slider.

const paper = matchMedia("print"), PAPER_WIDTH = 660;  // width of A4 without margins, in CSS pixels
const plots = [];

// Draws a figure, unless it is drawn, or hidden in a closed part of the page, where it has no size.
function draw(script) {
  if (script.dataset.drawn || script.closest("details:not([open])")) return;
  script.dataset.drawn = "true";
  const plot = document.getElementById(script.dataset.figure), spec = JSON.parse(script.textContent);
  plots.push(plot);
  const config = {displaylogo: false, responsive: true, displayModeBar: false};
  Plotly.newPlot(plot, spec.data, {...spec.layout, autosize: true}, config);
  plot.firstElementChild.setAttribute("aria-hidden", "true");  // screen readers get the description
  const groups = spec.layout.meta && spec.layout.meta.trials;
  if (groups) linkPoints(plot, groups);
  if (spec.layout.sliders) plot.addEventListener("keydown", (event) => moveSlider(plot, event));
}

function linkPoints(plot, groups) {
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
    setTimeout(announce, 100);  // Plotly draws its label within 50 ms
  });
  function announce() {
    const texts = [...plot.querySelectorAll(".hoverlayer text")];
    const lines = texts.flatMap((text) => (text.children.length ? [...text.children] : text));
    const said = lines.map((line) => line.textContent).join(", ");
    document.getElementById("live").textContent = `${said}. Point ${at + 1} of ${points.length}.`;
  }
}

function moveSlider(plot, event) {
  const by = {PageDown: 1, PageUp: -1}[event.key], [{active, steps, currentvalue}] = plot.layout.sliders;
  if (!by) return;
  event.preventDefault();
  const to = Math.min(Math.max(active + by, 0), steps.length - 1);
  Plotly[steps[to].method](plot, ...steps[to].args);
  Plotly.relayout(plot, "sliders[0].active", to);
  document.getElementById("live").textContent = currentvalue.prefix + steps[to].label;
}

// The points that link to trials, in the form that Plotly.Fx.hover takes.
function findPoints(plot) {
  const points = [];
  plot.data.forEach((trace, curveNumber) => {
    const panel = trace.subplot || (trace.xaxis || "x") + (trace.yaxis || "y");
    const add = (data, place) => data[0] >= 0 && points.push({curveNumber, group: data[0], panel, ...place});
    (trace.customdata || []).forEach((data, number) => {
      if (trace.type !== "heatmap") return add(data, {pointNumber: number});
      data.forEach((cell, column) => add(cell, {xval: getCentre(trace.x, column), yval: getCentre(trace.y, number)}));
    });
  });
  return points;
}

// The centre of a heat map's cell on an axis; text and missing values are numbered from 0.
function getCentre(values, number) {
  return values && typeof values[number] === "number" ? values[number] : number;
}

function applyColours() {
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

function drawAll() {
  document.querySelectorAll("script[data-figure]").forEach(draw);
  applyColours();
}

drawAll();
document.querySelectorAll("details.split").forEach((part) => part.addEventListener("toggle", drawAll));
applyHash();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", applyColours);
paper.addEventListener("change", applyColours);
addEventListener("beforeprint", () => {
  document.querySelectorAll("details").forEach((one) => (one.open = true));
  drawAll();
});
