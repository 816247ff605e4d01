// Charts over time: what was spent, how fast the answers were, and how good.

import { IS_CALL, IS_ROOT, MOST, among, countAll, isFilled, metrics, unpricedCalls, where } from "./api.js";
import {
  costs, follow, go, h, lasted, nothing, openView, path, rounded, show, sum, title, unique, usd, whole, withQuery,
} from "./base.js";
import { chart, coloured } from "./chart.js";

const HOUR_MS = 3_600_000;
const PERIODS = {
  "1h": { name: "Last hour", hours: 1, granularity: "minute" },
  "24h": { name: "Last 24 hours", hours: 24, granularity: "hour" },
  "7d": { name: "Last 7 days", hours: 7 * 24, granularity: "day" },
  "30d": { name: "Last 30 days", hours: 30 * 24, granularity: "day" },
  "90d": { name: "Last 90 days", hours: 90 * 24, granularity: "week" },
};
const percent = (share) => `${Number((share * 100).toPrecision(2))} %`;
// The charts appear in this order, even while they are still loading.
const CHARTS = {
  cost: { name: "Cost by model", note: "US dollars", format: usd },
  calls: { name: "Model calls", note: "by model", format: whole },
  tokens: { name: "Tokens", note: "read and written by models", format: whole },
  latency: { name: "Latency of model calls", note: "half, 95 % and 99 % were faster", format: lasted, kind: "lines" },
  errors: { name: "Error rate", note: "of model calls", format: percent, kind: "lines" },
  teams: { name: "Cost by team", note: "US dollars", format: usd, kind: "rows" },
  scores: { name: "Scores from 0 to 1", note: "average", format: rounded, kind: "lines" },
  others: { name: "Other scores", note: "average", format: rounded, kind: "lines", isOptional: true },
};
const MODEL_SUMS = ["sum totalCost", "sum inputTokens", "sum outputTokens", "count count"];
const PERCENTILES = ["p50", "p95", "p99"];
const TAGS = 12;
// Each name keeps its colour in all charts, as long as the page is open.
const modelColours = new Map();
const scoreColours = new Map();

export async function dashboard() {
  const asked = new URLSearchParams(location.search).get("period");
  const chosen = Object.hasOwn(PERIODS, asked) ? asked : "24h";
  const { hours, granularity } = PERIODS[chosen];
  let known = { tiles: {}, charts: {} };
  const draw = () => {
    const charts = Object.entries(CHARTS).map(([key, one]) => ({ ...one, ...known.charts[key] }));
    show(
      title("Dashboard", picker(chosen)),
      h("dl", { class: "tiles" }, Object.entries(known.tiles).map(([name, value]) =>
        h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
      h("p", { class: "quiet" }, known.notes),
      h("div", { class: "charts" }, charts.filter((one) => !one.isOptional || one.series?.length).map(chart)));
  };
  draw();
  addEventListener("resize", draw, { signal: openView() });

  // The period moves on with the clock, even if nothing new is stored.
  const step = granularity === "minute" ? HOUR_MS / 60 : HOUR_MS;
  const ask = async () => [...await countAll(), Math.floor(Date.now() / step)];
  let isDrawn = false;
  await follow(ask, async ([stored]) => {
    if (!stored) {
      return show(title("Dashboard"), nothing("Nothing is stored yet", "python 01_langfuse_setup.py",
        "The charts are drawn from what the lessons store. Lesson 4 stores a day of traffic."));
    }
    const to = new Date();
    const from = new Date(to - hours * HOUR_MS);
    const period = { fromTimestamp: from.toISOString(), toTimestamp: to.toISOString() };
    const byTime = { ...period, timeDimension: { granularity } };
    const models = await metrics("observations", MODEL_SUMS,
      { by: ["providedModelName"], filters: [isFilled("providedModelName")], ...byTime });
    if (!isDrawn) {
      known = ofCalls(models, byTime);
      draw();
    }
    const unpriced = await unpricedCalls([where("datetime", "startTime", ">=", period.fromTimestamp)]);
    const parts = [ofCosts(models, byTime, unpriced), ofCalls(models, byTime), await readRest(period, byTime)];
    known = {
      tiles: Object.assign({}, ...parts.map((part) => part.tiles)),
      charts: Object.assign({}, ...parts.map((part) => part.charts)),
      notes: parts[0].notes,
    };
    isDrawn = true;
    draw();
  });
}

function picker(chosen) {
  const options = Object.entries(PERIODS).map(([key, { name }]) =>
    h("option", { value: key, selected: key === chosen }, name));
  const onchange = (event) => go(withQuery(path("dashboard"), { period: event.currentTarget.value }));
  return h("select", { "aria-label": "Period", onchange }, options);
}

/** Rows by model and time, as series of one of their values, each in its model's colour. */
function byModel(rows, name, byTime) {
  const { series, ...times } = asSeries(rows, "providedModelName", name, byTime);
  const mostCalled = asSeries(rows, "providedModelName", "count_count", byTime).series.map((one) => one.name);
  const colours = coloured(modelColours, mostCalled);
  return { ...times, series: series.map((one) => ({ ...one, colour: colours.get(one.name) })) };
}

function ofCalls(rows, byTime) {
  const calls = byModel(rows, "count_count", byTime);
  const total = (name) => sum(rows, (row) => row[name] ?? 0);
  const tokens = (name) => sumByTime(rows, calls.times, name);
  return {
    tiles: {
      Tokens: whole(total("sum_inputTokens") + total("sum_outputTokens")),
      "Model calls": whole(total("count_count")),
    },
    charts: {
      calls,
      tokens: {
        buckets: calls.buckets,
        series: [
          { name: "input", values: tokens("sum_inputTokens"), colour: 0 },
          { name: "output", values: tokens("sum_outputTokens"), colour: 1 },
        ],
      },
    },
  };
}

/** What models cost. A model without a price gets a series too, but is in no sum. */
function ofCosts(rows, byTime, unpriced) {
  const { series, ...times } = byModel(rows, "sum_totalCost", byTime);
  const total = sum(rows, (row) => row.sum_totalCost ?? 0);
  const free = unique(unpriced.rows.map((row) => row.model));
  const isPaid = (one) => one.values.some(Boolean);
  const named = (one) => ({ ...one, name: isPaid(one) ? one.name : `${one.name} (cost unknown)` });
  const count = unpriced.rows.length;
  return {
    tiles: { Cost: costs({ cost: total || (free.length ? null : 0), unknown: free.length > 0 }) },
    charts: {
      cost: { ...times, series: series.filter((one) => isPaid(one) || free.includes(one.name)).map(named) },
    },
    notes: [
      count > 0 && `The cost of ${unpriced.isAll ? "" : "at least "}${whole(count)} ${count === 1 ? "call" : "calls"} `
        + `of ${free.join(", ")} is unknown, so no sum here includes it. `,
      rows.length === MOST && `Charts by model are incomplete: the Metrics API returns at most ${whole(MOST)} values.`,
    ],
  };
}

/** Latency, errors, tags and scores. */
async function readRest(period, byTime) {
  const isGeneration = [among("type", ["GENERATION"])];
  const percentiles = PERCENTILES.map((name) => `${name} latency`);
  const [[overall], latency, levels, tags, averages, [traced]] = await Promise.all([
    metrics("observations", ["p95 latency"], { filters: isGeneration, ...period }),
    metrics("observations", percentiles, { filters: isGeneration, ...byTime }),
    metrics("observations", ["count count"], { by: ["level"], filters: [IS_CALL], ...byTime }),
    metrics("observations", ["sum totalCost"], { by: ["tags"], ...period }),
    metrics("scores-numeric", ["avg value"], { by: ["name"], ...byTime }),
    metrics("observations", ["count count"], { filters: [IS_ROOT], ...period }),
  ]);
  const errors = asErrorRate(levels, byTime);
  const scores = asSeries(averages, "name", "avg_value", byTime, null);
  const colours = coloured(scoreColours, scores.series.map((one) => one.name));
  const series = scores.series.map((one) => ({ ...one, colour: colours.get(one.name) }));
  const isShare = (one) => one.values.every((value) => value === null || Math.abs(value) <= 1);
  return {
    tiles: {
      Traces: whole(traced?.count_count ?? 0),
      "p95 latency": lasted(overall?.p95_latency) ?? "–",
      "Error rate": errors.overall === null ? "–" : percent(errors.overall),
    },
    charts: {
      latency: {
        buckets: latency.map((row) => labelOf(row.time_dimension, byTime)),
        series: PERCENTILES.map((name, i) =>
          ({ name, values: latency.map((row) => row[`${name}_latency`]), colour: i })),
      },
      errors,
      teams: asTags(tags),
      scores: { buckets: scores.buckets, series: series.filter(isShare) },
      others: { buckets: scores.buckets, series: series.filter((one) => !isShare(one)) },
    },
  };
}

/** Rows by time and name, as series, largest first; `blank` is the value where a name has no row. */
function asSeries(rows, name, value, byTime, blank = 0) {
  const times = unique(rows.map((row) => row.time_dimension)).sort();
  const values = new Map(rows.map((row) => [`${row.time_dimension}\n${row[name]}`, row[value]]));
  const series = unique(rows.map((row) => row[name]).filter(Boolean)).map((one) =>
    ({ name: one, values: times.map((time) => values.get(`${time}\n${one}`) ?? blank) }));
  const size = (one) => sum(one.values, (n) => n ?? 0);
  return {
    times,
    buckets: times.map((time) => labelOf(time, byTime)),
    series: series.sort((a, b) => size(b) - size(a)),
  };
}

function sumByTime(rows, times, name) {
  const byTime = Map.groupBy(rows, (row) => row.time_dimension);
  return times.map((time) => sum(byTime.get(time), (row) => row[name] ?? 0));
}

function asErrorRate(rows, byTime) {
  const { buckets, series } = asSeries(rows, "level", "count_count", byTime);
  const calls = buckets.map((_, i) => sum(series, (one) => one.values[i]));
  const failed = series.find((one) => one.name === "ERROR")?.values ?? calls.map(() => 0);
  const all = sum(calls, Number);
  const values = calls.map((count, i) => (count ? failed[i] / count : null));
  return {
    buckets,
    series: all ? [{ name: "error rate", values, colour: "error" }] : [],
    overall: all ? sum(failed, Number) / all : null,
  };
}

/** Cost by tag: only by team tags, if there are any. */
function asTags(rows) {
  const costOf = new Map();
  for (const row of rows) {
    for (const tag of row.tags) costOf.set(tag, (costOf.get(tag) ?? 0) + row.sum_totalCost);
  }
  const ofTeams = [...costOf].filter(([tag]) => tag.startsWith("team:"));
  const costliest = (ofTeams.length ? ofTeams : [...costOf]).sort((a, b) => b[1] - a[1]).slice(0, TAGS);
  return {
    name: ofTeams.length ? "Cost by team" : "Cost by tag",
    buckets: costliest.map(([tag]) => tag),
    series: [{ name: "cost", values: costliest.map(([, cost]) => cost), colour: 0 }],
  };
}

/** The start of a time bucket, which is in UTC: its day, or its hour and minute in local time. */
function labelOf(time, { timeDimension: { granularity } }) {
  if (["hour", "minute"].includes(granularity)) {
    const clock = { hour: "2-digit", minute: "2-digit" };
    return new Date(`${time.replace(" ", "T")}Z`).toLocaleTimeString("en-GB", clock);
  }
  const day = { day: "numeric", month: "short", timeZone: "UTC" };
  return new Date(`${time}T00:00:00Z`).toLocaleDateString("en-GB", day);
}
