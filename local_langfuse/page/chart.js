// Charts: a figure with an SVG, the values under the pointer, and a table for keyboards and screen readers.

import { h, s, shorter, sum, table, unique } from "./base.js";

const COLOURS = 8; // .series-0 and so on in the style sheet
const HEIGHT = 200;
const FOOT = 22;
const HEAD = 8;
const ROW = 34;
const CHARACTER = 6.6; // its width, roughly

/** Give each name its own colour until the colours run out; a name in `known` keeps its colour. */
export function coloured(known, names) {
  for (const name of known.keys()) {
    if (!names.includes(name)) known.delete(name);
  }
  const taken = new Set(known.values());
  const free = Array.from({ length: COLOURS }, (_, i) => i).filter((i) => !taken.has(i));
  for (const name of names.filter((one) => !known.has(one)).slice(0, free.length)) known.set(name, free.shift());
  return known;
}

const classOf = ({ colour = "rest" }) => `series-${colour}`;

/**
 * A figure of series with one value per bucket (null if there is none). Its kind is bars, which are stacked; lines; or
 * rows, with one bar per bucket. Without series, it is still waiting for them.
 */
export function chart({ name, note, buckets = [], series, format, kind = "bars" }) {
  const all = series ?? [];
  const drawn = kind === "bars" ? withOthersAsOne(all, buckets) : all;
  const values = drawn.flatMap((one) => one.values).filter((value) => value !== null);
  const isEmpty = !values.length || (kind !== "lines" && !values.some((value) => value > 0));
  const text = (value) => (value === null ? null : format(value));
  const columns = all.map((one) => [one.name, (i) => text(one.values[i]), "number"]);
  const filled = buckets.map((_, i) => i).filter((i) => all.some((one) => ![null, 0].includes(one.values[i])));
  return h("figure", { class: "chart", "aria-label": name },
    h("figcaption", {}, h("h2", {}, name), h("p", {}, note)),
    h("div", { class: "canvas" }, isEmpty
      ? h("p", { class: "quiet none" }, series ? "Nothing in this period." : "")
      : [drawing({ buckets, series: drawn, format, kind }), h("div", { class: "tip", "data-own": "", hidden: "" })]),
    isEmpty ? null : [
      h("ul", { class: "legend" }, kind === "rows" ? null
        : drawn.map((one) => h("li", { class: classOf(one) }, one.name))),
      h("details", {}, h("summary", {}, "Values as a table"),
        table(name, [["", (i) => buckets[i]], ...columns], filled)),
    ]);
}

/** Merge the series that have no colour of their own into one. */
function withOthersAsOne(series, buckets) {
  const others = series.filter((one) => one.colour === undefined);
  if (others.length < 2) return series;
  const values = buckets.map((_, i) => sum(others, (one) => one.values[i] ?? 0));
  return [...series.filter((one) => !others.includes(one)), { name: `${others.length} others`, values }];
}

function drawing({ buckets, series, format, kind }) {
  const width = document.querySelector(".canvas")?.clientWidth; // all have the same width
  if (!width) return null;
  const lines = (i) => series
    .filter((one) => one.values[i] !== null && (kind !== "bars" || one.values[i]))
    .map((one) => h("div", {}, `${one.name}: `, h("b", {}, format(one.values[i]))));
  const zone = (i, box) => s("rect", {
    ...box, class: "zone",
    onpointermove: (event) => point(event, [h("div", {}, buckets[i]), ...lines(i)]),
    onpointerleave: (event) => { tipOf(event).hidden = true; },
  });
  const [height, ...groups] = kind === "rows"
    ? rows(width, buckets, series[0], format, zone)
    : overTime(width, buckets, series, format, kind, zone);
  return s("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
    groups.map((group) => s("g", {}, group)));
}

const tipOf = (event) => event.currentTarget.closest(".canvas").querySelector(".tip");

/** Show these lines beside the pointer, within the chart. */
function point(event, lines) {
  const tip = tipOf(event);
  tip.replaceChildren(...lines);
  tip.hidden = false;
  const box = tip.parentElement.getBoundingClientRect();
  const left = Math.max(0, Math.min(event.clientX - box.left + 12, box.width - tip.offsetWidth));
  Object.assign(tip.style, { top: `${event.clientY - box.top + 14}px`, left: `${left}px` });
}

/** The smallest round number that is not below `most`; for whole values, half of it is whole too. */
function nice(most, isWhole) {
  const unit = 10 ** Math.floor(Math.log10(most || 1));
  const fits = (n) => n >= most * 0.999 && (!isWhole || n % 2 === 0);
  return [1, 1.2, 1.6, 2, 3, 4, 6, 8, 10].map((n) => n * unit).find(fits);
}

/** Bars or lines: the height, and what to draw, from back to front. */
function overTime(width, buckets, series, format, kind, zone) {
  const valueAt = (one, j) => one.values[j] ?? 0;
  const stacked = (j, upTo = series.length) => sum(series.slice(0, upTo), (one) => valueAt(one, j));
  const values = kind === "bars" ? buckets.map((_, j) => stacked(j)) : series.flatMap((one) => one.values);
  const isWhole = values.every((value) => value === null || Number.isInteger(value));
  const top = nice(Math.max(0, ...values), isWhole);
  const lowest = Math.min(0, ...values);
  const bottom = lowest ? -nice(-lowest, isWhole) : 0;
  const ticks = [bottom, (bottom + top) / 2, top].map((value) => [value, format(value)]);

  const left = 12 + Math.max(...ticks.map(([, text]) => text.length)) * CHARACTER;
  const step = (width - left - 4) / buckets.length;
  const x = (j) => left + (j + 0.5) * step;
  const y = (value) => HEIGHT - FOOT - ((value - bottom) / (top - bottom)) * (HEIGHT - FOOT - HEAD);

  const grid = ticks.map(([value, text]) => [
    s("line", { class: "grid", x1: left, x2: width, y1: y(value), y2: y(value) }),
    s("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, text),
  ]);
  const last = buckets.length - 1;
  const labels = unique([0, Math.floor(last / 2), last]).map((j) => {
    const [at, anchor] = last && j === 0 ? [left, "start"] : last && j === last ? [width - 2, "end"] : [x(j), "middle"];
    return s("text", { x: at, y: HEIGHT - 4, "text-anchor": anchor }, buckets[j]);
  });
  const bars = (one, i) => buckets.map((_, j) => valueAt(one, j) > 0 && s("rect", {
    class: classOf(one), rx: 1.5, x: x(j) - Math.min(step * 0.4, 22), width: Math.min(step * 0.8, 44),
    y: y(stacked(j, i + 1)), height: Math.max(y(stacked(j, i)) - y(stacked(j, i + 1)), 0.5),
  }));
  const line = (one) => {
    const points = buckets.map((_, j) => j).filter((j) => one.values[j] !== null).map((j) => [x(j), y(one.values[j])]);
    return [
      s("polyline", { class: classOf(one), points: points.map((at) => at.join()).join(" ") }),
      points.map(([cx, cy]) => s("circle", { class: classOf(one), cx, cy, r: buckets.length > 40 ? 2 : 3 })),
    ];
  };
  const zones = buckets.map((_, j) => zone(j, { x: x(j) - step / 2, y: 0, width: step, height: HEIGHT - FOOT }));
  return [HEIGHT, [grid, labels], series.map(kind === "bars" ? bars : line), zones];
}

/** One bar per bucket, one below the other. */
function rows(width, buckets, one, format, zone) {
  const most = Math.max(...one.values) || 1;
  const bars = buckets.map((name, i) => {
    const box = { x: 0, y: i * ROW + 18, height: 8, rx: 4 };
    return [
      s("text", { x: 0, y: i * ROW + 12 }, shorter(name, Math.floor(width / 11))),
      s("text", { x: width, y: i * ROW + 12, "text-anchor": "end" }, format(one.values[i])),
      s("rect", { ...box, class: "groove", width }),
      s("rect", { ...box, class: classOf(one), width: Math.max((one.values[i] / most) * width, 2) }),
    ];
  });
  return [buckets.length * ROW, bars, buckets.map((_, i) => zone(i, { x: 0, y: i * ROW, width, height: ROW }))];
}
