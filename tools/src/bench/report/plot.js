// Draws a plot into each figure of the page, from the numbers in the figure's tables.
//
// A table has a row for each point on the x axis and a column for each curve. A cell has its exact value in
// `data-value`, and that value as people read it as its text. Without this script the tables remain.
"use strict";

const WIDTH = 460, HEIGHT = 270;
const LEFT = 62, RIGHT = 14, TOP = 12, BOTTOM = 44;
// About as many ticks as an axis has room for.
const TICKS = 5;
// A curve has a value at the selected place if it has a point within this many pixels.
const NEAR = 8;
const ROUNDING = 1e-9;

// Unlike Math.max(...values), these take any number of values.
const largest = (values) => values.reduce((a, b) => Math.max(a, b));
const smallest = (values) => values.reduce((a, b) => Math.min(a, b));

// ---- Scales: where a value is on an axis, from 0 to 1, and which ticks the axis has. ----

// Thousands, minutes, MiB: the unit in which the ticks of a linear axis are written.
function tickUnit(kind, max) {
  const KIB = 1024, MIB = 1024 ** 2, GIB = 1024 ** 3;
  if (kind === "time") {
    if (max <= 300) return { size: 1, title: ", s" };
    return max <= 3 * 3600 ? { size: 60, title: ", min" } : { size: 3600, title: ", h" };
  }
  if (kind === "bytes") {
    if (max < MIB) return { size: KIB, title: ", KiB" };
    return max < 10 * GIB ? { size: MIB, title: ", MiB" } : { size: GIB, title: ", GiB" };
  }
  if (kind === "share") return { size: 0.01, title: ", %" };
  if (max < 1e4) return { size: 1 };
  return max < 5e6 ? { size: 1e3, suffix: "k" } : { size: 1e6, suffix: "M" };
}

// The first of 1, 2, 5, 10, 20, 50, ... that is not below `min`.
function roundStep(min) {
  const power = 10 ** Math.floor(Math.log10(min));
  return [1, 2, 5, 10].map((head) => head * power).find((step) => step >= min * (1 - ROUNDING));
}

function linearScale(kind, values) {
  const max = Math.max(0, largest(values)), min = Math.min(0, smallest(values));
  const unit = tickUnit(kind, Math.max(max, -min));
  const top = max > min ? max / unit.size : 1, bottom = min / unit.size;
  let step = roundStep((top - bottom) / TICKS);
  if (kind === "number" && unit.size === 1) step = Math.max(step, 1);
  const first = Math.floor(bottom / step + ROUNDING), start = first * step;
  // The time axis ends with the last sample, other axes end at a tick.
  const end = kind === "time" ? top : Math.ceil(top / step - ROUNDING) * step;
  const place = (value) => (value / unit.size - start) / (end - start);
  const ticks = [];
  for (let i = first; i * step <= end + step * ROUNDING; i++) {
    const text = (i * step).toLocaleString("en", { maximumFractionDigits: 3 });
    ticks.push({ at: place(i * step * unit.size), text: text + (i !== 0 && unit.suffix ? unit.suffix : "") });
  }
  return { place, ticks, title: unit.title ?? "" };
}

function nanosText(nanos) {
  const [size, unit] = [[1e9, "s"], [1e6, "ms"], [1e3, "us"], [1, "ns"]].find(([size]) => nanos >= size);
  return `${Math.round(nanos / size)} ${unit}`;
}

function logScale(values) {
  const log = (value) => Math.log10(Math.max(value, 1));
  const low = log(smallest(values)), high = log(largest(values));
  const first = Math.floor(low), last = Math.max(Math.ceil(high), first + 1);
  const heads = last - first >= 3 ? [1] : [1, 2, 5];
  let ticks = [];
  for (let decade = first; decade <= last; decade++) {
    for (const head of heads) ticks.push(head * 10 ** decade);
  }
  // From the last tick below all values to the first one above, but at least two.
  const from = ticks.findLastIndex((tick) => Math.log10(tick) <= low + ROUNDING);
  const to = ticks.findIndex((tick) => Math.log10(tick) >= high - ROUNDING);
  ticks = ticks.slice(Math.max(from, 0), Math.max(to, from + 1) + 1);
  const start = Math.log10(ticks[0]), length = Math.log10(ticks.at(-1)) - start;
  const place = (value) => (log(value) - start) / length;
  return { place, ticks: ticks.map((tick) => ({ at: place(tick), text: nanosText(tick) })), title: " (log scale)" };
}

// Each further nine of a percentile takes the same room: 90, 99, 99.9, ...
function ninesScale(values) {
  const nines = (quantile) => -Math.log10(Math.max(1 - quantile, 1e-12));
  const end = Math.max(1, largest(values.map(nines)));
  const ticks = [];
  for (let i = 0; i <= end + ROUNDING; i += end > 6 ? 2 : 1) {
    ticks.push({ at: i / end, text: (100 - 100 * 10 ** -i).toFixed(Math.max(i - 2, 0)) });
  }
  return { place: (quantile) => nines(quantile) / end, ticks, title: ", %" };
}

function scale(kind, values) {
  if (kind === "ns") return logScale(values);
  return kind === "quantile" ? ninesScale(values) : linearScale(kind, values);
}

// ---- Reading the tables ----

// The curves of a table. A cell without a value is a gap, and gives no point.
function curvesOf(table) {
  const rows = [...table.tBodies[0].rows];
  return [...table.tHead.rows[0].cells].slice(1).map((head, index) => ({
    name: head.textContent,
    classes: `c${head.dataset.color} d${head.dataset.dashes}`,
    points: rows.map((row) => {
      const x = row.cells[0], y = row.cells[index + 1];
      if (y.dataset.value === undefined) return null;
      return { x: Number(x.dataset.value), xText: x.textContent, y: Number(y.dataset.value), yText: y.textContent };
    }),
  }));
}

// ---- Drawing ----

function svg(parent, name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return parent.appendChild(element);
}

function drawAxes(plot, x, y, figure) {
  const bottom = HEIGHT - BOTTOM, right = WIDTH - RIGHT;
  for (const tick of y.ticks) {
    const top = y.pixel(tick.at);
    svg(plot, "line", { class: "grid", x1: LEFT, x2: right, y1: top, y2: top });
    svg(plot, "text", { class: "tick", x: LEFT - 6, y: top, "text-anchor": "end", "dominant-baseline": "middle" }, tick.text);
  }
  for (const tick of x.ticks) {
    const left = x.pixel(tick.at);
    svg(plot, "line", { class: "grid", x1: left, x2: left, y1: TOP, y2: bottom });
    svg(plot, "text", { class: "tick", x: left, y: bottom + 17, "text-anchor": "middle" }, tick.text);
  }
  svg(plot, "path", { class: "axis", d: `M${LEFT},${TOP}V${bottom}H${right}` });
  const middle = (LEFT + right) / 2;
  svg(plot, "text", { class: "tick", x: middle, y: HEIGHT - 6, "text-anchor": "middle" }, figure.dataset.xLabel + x.title);
}

function drawCurve(plot, curve, x, y) {
  // A gap starts a new line. The zero-length step shows a point that stands between two gaps.
  let d = "", pen = "M";
  for (const point of curve.points) {
    if (point === null) {
      pen = "M";
      continue;
    }
    d += `${pen}${x.of(point).toFixed(1)},${y.of(point).toFixed(1)}${pen === "M" ? "h0" : ""}`;
    pen = "L";
  }
  svg(plot, "path", { class: `curve ${curve.classes}`, d });
}

// The legend is also the place where the values of the selected point are shown.
function addLegend(figure, plot, curves) {
  const legend = document.createElement("ul");
  legend.className = "legend";
  figure.insertBefore(legend, plot);
  return curves.map((curve) => {
    const item = legend.appendChild(document.createElement("li"));
    const swatch = svg(item, "svg", { viewBox: "0 0 32 10", "aria-hidden": "true" });
    svg(swatch, "line", { class: `curve ${curve.classes}`, x1: 1, x2: 31, y1: 5, y2: 5 });
    item.append(curve.name, " ");
    return item.appendChild(document.createElement("b"));
  });
}

// The point of a curve that is nearest to a place on the x axis, if one is near.
function nearest(curve, x, left) {
  const distance = (point) => Math.abs(x.of(point) - left);
  const closer = (best, point) =>
    point === null || (best !== null && distance(best) <= distance(point)) ? best : point;
  const point = curve.points.reduce(closer, null);
  return point !== null && distance(point) <= NEAR ? point : null;
}

// Selects points with the mouse, by touch, or with the arrow keys. To a screen reader the plot is a slider.
function makeSelectable(figure, plot, curves, values, x, y) {
  // The places that can be selected, in pixels: those of all points, but only one of those within a pixel.
  const lefts = curves.flatMap((curve) => curve.points.filter((point) => point !== null).map(x.of))
    .sort((a, b) => a - b)
    .reduce((kept, left) => (kept.length > 0 && left - kept.at(-1) < 1 ? kept : [...kept, left]), []);
  const label = figure.querySelector("figcaption").appendChild(document.createElement("span"));
  const line = svg(plot, "line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM });
  const dots = curves.map((curve) => svg(plot, "circle", { class: `dot ${curve.classes}`, r: 4 }));
  let selected = -1;

  function select(index) {
    selected = Math.min(Math.max(index, 0), lefts.length - 1);
    const left = lefts[selected];
    plot.classList.add("selected");
    line.setAttribute("x1", left);
    line.setAttribute("x2", left);
    const texts = [];
    curves.forEach((curve, number) => {
      const point = nearest(curve, x, left);
      dots[number].classList.toggle("shown", point !== null);
      values[number].textContent = point === null ? "" : point.yText;
      if (point === null) return;
      label.textContent = point.xText;
      dots[number].setAttribute("cx", x.of(point));
      dots[number].setAttribute("cy", y.of(point));
      texts.push(`${curve.name} ${point.yText}`);
    });
    plot.setAttribute("aria-valuenow", selected);
    plot.setAttribute("aria-valuetext", `${label.textContent}: ${texts.join(", ")}`);
  }

  function clear() {
    selected = -1;
    plot.classList.remove("selected");
    for (const element of [label, ...values]) element.textContent = "";
  }

  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const left = ((event.clientX - box.left) / box.width) * WIDTH;
    const distances = lefts.map((at) => Math.abs(at - left));
    select(distances.indexOf(smallest(distances)));
  });
  plot.addEventListener("pointerleave", clear);
  plot.addEventListener("blur", clear);
  plot.addEventListener("focus", () => { if (selected < 0) select(lefts.length - 1); });
  plot.addEventListener("keydown", (event) => {
    const step = Math.max(1, Math.round(lefts.length / 10));
    const moves = {
      ArrowLeft: selected - 1, ArrowDown: selected - 1, ArrowRight: selected + 1, ArrowUp: selected + 1,
      PageDown: selected - step, PageUp: selected + step, Home: 0, End: lefts.length - 1,
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    select(moves[event.key]);
  });
  for (const [key, value] of Object.entries({ role: "slider", tabindex: 0, "aria-valuemin": 0, "aria-valuemax": lefts.length - 1 })) {
    plot.setAttribute(key, value);
  }
}

function drawFigure(figure) {
  const curves = [...figure.querySelectorAll("table")].flatMap(curvesOf);
  const points = curves.flatMap((curve) => curve.points.filter((point) => point !== null));
  const x = scale(figure.dataset.x, points.map((point) => point.x));
  const y = scale(figure.dataset.y, points.map((point) => point.y));
  x.pixel = (place) => LEFT + place * (WIDTH - LEFT - RIGHT);
  y.pixel = (place) => HEIGHT - BOTTOM - place * (HEIGHT - BOTTOM - TOP);
  x.of = (point) => x.pixel(x.place(point.x));
  y.of = (point) => y.pixel(y.place(point.y));

  const plot = svg(figure, "svg", { class: "plot", viewBox: `0 0 ${WIDTH} ${HEIGHT}` });
  const caption = figure.querySelector("figcaption");
  plot.setAttribute("aria-label", caption.textContent);
  caption.append(`, ${figure.dataset.yLabel}${y.title} `);
  figure.insertBefore(plot, figure.querySelector("details"));
  drawAxes(plot, x, y, figure);
  for (const curve of curves) drawCurve(plot, curve, x, y);
  makeSelectable(figure, plot, curves, addLegend(figure, plot, curves), x, y);
}

document.querySelectorAll("figure[data-x]").forEach(drawFigure);
