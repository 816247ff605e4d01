// The list of traces, newest first, and its filters.

import {
  IS_ROOT, MOST, NO_COST, allObservations, among, countStored, is, metrics, observations, summed, unpricedCalls, where,
} from "./api.js";
import {
  LEVELS, chip, costs, follow, go, h, isPriced, lasted, levelChip, link, ms, nothing, openView, path, rowLink, s, show,
  spent, sum, table, timeText, title, unique, when, whole, withQuery, worst,
} from "./base.js";

const PAGE = 50;
const FEW = 200; // observations: if there are more, the normal search finds them soon enough
const TYPING_MS = 400;
const NUMBER = String.raw`\s*[<>]?=?\s*\$?\d*\.?\d+\s*`;
const FILTERS = {
  text: { label: "Text in input or output", placeholder: "refund" },
  name: { label: "Name", placeholder: "answer-…" },
  user: { label: "User", placeholder: "ada" },
  session: { label: "Session" },
  tag: { label: "Tag", placeholder: "team:sales" },
  environment: { label: "Environment", placeholder: "development" },
  level: { label: "Level" },
  latency: { label: "Latency, seconds", placeholder: "2 or <2", pattern: NUMBER },
  tokens: { label: "Tokens", placeholder: "100 or <100", pattern: NUMBER },
  cost: { label: "Cost, $", placeholder: "0.01 or unknown", pattern: `${NUMBER}|unknown` },
  from: { label: "From", type: "datetime-local" },
  to: { label: "To", type: "datetime-local" },
};

const COLUMNS = [
  ["Time", (row) => when(row.startTime), "time"],
  ["Name", (row) => rowLink(row.name || row.traceId, "traces", row.traceId), "first"],
  ["Latency", (row) => lasted(spent(row)), "number"],
  ["Tokens", (row) => (row.tokens === undefined ? "…" : row.tokens ? whole(row.tokens) : null), "number"],
  ["Cost", (row) => (row.tokens === undefined ? "…" : costs(row)), "number"],
  ["User", (row) => link(row.userId, "users", row.userId)],
  ["Session", (row) => link(row.sessionId, "sessions", row.sessionId)],
  ["Tags", (row) => (row.tags.length ? row.tags.map((tag) => chip(tag)) : null), "tags"],
  ["Level", (row) => levelChip(row) ?? h("span", { class: "quiet" }, row.level), "level"],
];

export async function traces() {
  const query = new URLSearchParams(location.search);
  const given = Object.keys(FILTERS).map((key) => [key, query.get(key)]);
  const asked = Object.fromEntries(given.filter(([, value]) => value));
  const cursor = query.get("cursor") ?? undefined;
  const isFiltered = Object.keys(asked).length > 0;

  const draw = (...nodes) => {
    const clear = isFiltered ? h("a", { href: path("traces") }, "Clear the filters") : null;
    show(title("Traces", clear), filterForm(asked), nodes);
  };
  const newestFirst = (a, b) => ms(b.startTime) - ms(a.startTime); // the API compares whole milliseconds
  const list = (rows) => rows.length > 0 && table("Traces", COLUMNS, rows.toSorted(newestFirst), (row) => row.id);
  const foot = (...parts) => h("p", { class: "more" }, parts);

  let isDrawn = false;
  const load = async () => {
    const { rows, next } = await findTraces(asked, cursor, (found, looked, last) => {
      const far = looked ? ` ${whole(looked)} traces so far, back to ${timeText(last.startTime)}` : "";
      if (!isDrawn) draw(list(found), foot(`Looking …${far}`));
    });
    isDrawn = true;
    if (!rows.length && !isFiltered && !cursor) {
      return show(title("Traces"), nothing("Nothing is stored yet", "python 01_langfuse_setup.py",
        "Run the first lesson in another terminal: its trace will appear here by itself."));
    }
    draw(
      list(rows) || h("p", { class: "quiet" }, "No trace matches these filters."),
      foot(
        h("span", {}, `${rows.length} shown`),
        cursor ? h("a", { href: withQuery(path("traces"), asked) }, "← Newest") : null,
        next ? h("a", { href: withQuery(path("traces"), { ...asked, cursor: next }) }, "Older traces →") : null));
  };

  const misread = Object.keys(asked).filter((key) => {
    const read = field(key, asked[key]);
    return !read.value || !read.checkValidity();
  });
  if (misread.length) {
    const hints = misread.map((key) => `${FILTERS[key].label} (${FILTERS[key].placeholder ?? "choose one"})`);
    return draw(h("p", { role: "alert" }, `A filter cannot be read: ${hints.join(", ")}.`));
  }
  draw(foot("Looking …"));
  if (cursor) await load();
  else await follow(countStored, load);
}

// The form

function filterForm(asked) {
  const count = Object.keys(asked).length;
  const fields = Object.keys(FILTERS).map((key) => h("label", {}, FILTERS[key].label, field(key, asked[key])));
  const form = h("form", {
    class: "filters", role: "search", "aria-label": "Filter traces",
    onsubmit: (event) => {
      event.preventDefault();
      apply(event.currentTarget);
    },
    oninput: (event) => applySoon(event.currentTarget),
  }, fields, h("button", { hidden: "" }, "Apply")); // without a button, Enter would not submit several fields
  return h("details", { class: "filter", open: count || innerWidth > 700 ? "" : null },
    h("summary", {}, count ? `Filters (${count})` : "Filters"), form);
}

function field(key, value) {
  if (key === "level") {
    const options = ["", ...LEVELS].map((level) => h("option", { value: level, selected: level === (value ?? "") },
      level || "any"));
    return h("select", { name: key }, options);
  }
  const { type = "search", placeholder, pattern } = FILTERS[key];
  return h("input", { name: key, value, type, placeholder, pattern, step: type === "search" ? null : 1 });
}

function apply(form) {
  if (!form.checkValidity()) return;
  const given = [...new FormData(form)].filter(([, value]) => value);
  const url = given.length ? withQuery(path("traces"), given) : path("traces");
  if (url !== location.pathname + location.search) go(url, true);
}

let typing;
function applySoon(form) {
  const view = openView();
  clearTimeout(typing);
  typing = setTimeout(() => {
    if (!view.aborted) apply(form);
  }, TYPING_MS);
}

// The search goes from root to root, newest first, so that each trace has one place on one page. The API checks the
// conditions on the root itself. A sieve checks those on any observation, or on a sum, for many traces at once.

/**
 * Return a page of traces that match, and the cursor of the next page. On the way, call
 * `progress(rows, roots looked at, the last of them)`.
 */
async function findTraces(asked, cursor, progress) {
  const sieves = sievesFor(asked);
  let root = rootConditions(asked);
  const rows = [];
  let looked = 0;
  let next = cursor;
  let size = sieves.length ? 2 * PAGE : PAGE;
  do {
    const begin = next;
    const query = { limit: size, cursor: begin, fields: "core,basic,trace_context" };
    const { data, meta } = await observations(root, query);
    let ids = unique(data.map((row) => row.traceId));
    for (const sieve of sieves) ids = ids.length ? await sieve(ids) : [];
    const fitting = new Set(ids);
    const found = data.filter((row) => fitting.has(row.traceId));
    const taken = found.slice(0, PAGE - rows.length);
    looked += data.length;
    if (taken.length || meta.cursor) progress([...rows, ...taken], sieves.length ? looked : 0, data.at(-1));
    rows.push(...await summedUp(taken));
    const isCut = taken.length < found.length;
    next = isCut ? await cursorAfter(root, begin, data, taken.at(-1)) : meta.cursor;
    // Something so rare that it is not among the newest is looked up in the whole database at once.
    if (begin === cursor && next && rows.length < PAGE) root = [...root, ...inTraces(await few(sieves))];
    size = Math.min(2 * size, MOST);
  } while (next && rows.length < PAGE);
  return { rows, next };
}

/** The ids of all traces that pass one of the sieves, if they are few. */
async function few(sieves) {
  for (const sieve of sieves) {
    const ids = await sieve(null);
    if (ids) return ids;
  }
  return null;
}

function rootConditions({ from, to, name, user, session, environment, tag, latency }) {
  const time = (text) => new Date(text).toISOString();
  const conditions = [
    IS_ROOT,
    from && where("datetime", "startTime", ">=", time(from)),
    to && where("datetime", "startTime", "<", time(to)),
    name && where("string", "name", "contains", name),
    user && is("userId", user),
    session && is("sessionId", session),
    environment && is("environment", environment),
    tag && where("arrayOptions", "tags", "any of", [tag]),
    latency && where("number", "latency", ...comparison(latency)),
  ];
  return conditions.filter(Boolean);
}

/** "2" and ">2" mean at least 2, and "<2" means less. */
function comparison(text) {
  const [, sign, number] = /([<>]?)=?\s*\$?([\d.]+)/.exec(text);
  return [sign === "<" ? "<" : ">=", Number(number)];
}

/**
 * A sieve takes trace ids and returns those that match. Given null, it returns all that match in the whole database,
 * or null if there are many.
 */
function sievesFor({ text, level, tokens, cost }) {
  const ofLevel = level ? [among("level", [level])] : [];
  const inText = (column) => [where("string", column, "matches", text), ...ofLevel];
  const seeks = text ? [inText("output"), inText("input")] : level ? [ofLevel] : [];
  const sieves = [];
  if (seeks.length) sieves.push((ids) => tracesWith(seeks, ids));
  if (tokens) sieves.push((ids) => tracesThatSpent("sum totalTokens", comparison(tokens), ids));
  if (cost === "unknown") sieves.push(tracesOfUnknownCost);
  else if (cost) sieves.push((ids) => tracesThatSpent("sum totalCost", comparison(cost), ids));
  if (cost?.includes("<")) sieves.push(tracesOfKnownCost);
  return sieves;
}

const inTraces = (ids) => (ids ? [among("traceId", ids)] : []);

/** Traces with an observation that meets one of `seeks`; each of these is a list of conditions. */
async function tracesWith(seeks, ids) {
  const found = [];
  for (const seek of seeks) {
    if (ids) found.push(...await allObservations([...seek, ...inTraces(ids)], "core"));
    else {
      const { data, meta } = await observations(seek, { limit: FEW, fields: "core" });
      if (meta.cursor) return null;
      found.push(...data);
    }
  }
  return unique(found.map((row) => row.traceId));
}

async function tracesThatSpent(measure, [sign, number], ids) {
  if (!ids && sign === "<") return null;
  const rows = await metrics("observations", [measure], { by: ["traceId"], filters: inTraces(ids), top: measure });
  const value = (row) => row[measure.replace(" ", "_")];
  const fitting = rows.filter((row) => (sign === "<" ? value(row) < number : value(row) >= number));
  return !ids && fitting.length === MOST ? null : fitting.map((row) => row.traceId);
}

async function tracesOfUnknownCost(ids) {
  const { rows, isAll } = ids
    ? { rows: await allObservations([...NO_COST, ...inTraces(ids)], "core,usage"), isAll: true }
    : await unpricedCalls([]);
  return isAll ? unique(rows.filter((row) => !isPriced(row)).map((row) => row.traceId)) : null;
}

/** An unknown cost is not less than a known one, but the Metrics API counts it as 0. */
async function tracesOfKnownCost(ids) {
  const unknown = ids && await tracesOfUnknownCost(ids);
  return ids && ids.filter((id) => !unknown.includes(id));
}

/** The cursor after a row of `data`: that of a shorter page, without anything stored since. */
async function cursorAfter(root, begin, data, last) {
  const until = where("datetime", "startTime", "<=", data[0].startTime);
  const query = { limit: data.indexOf(last) + 1, cursor: begin, fields: "core" };
  return (await observations([...root, until], query)).meta.cursor;
}

/** The traces of these roots with their totals; a trace with several roots is listed at its first. */
async function summedUp(taken) {
  if (!taken.length) return [];
  const ids = unique(taken.map((row) => row.traceId));
  const query = { by: ["traceId", "level"], filters: inTraces(ids), top: "sum totalCost" };
  const [sums, roots, free] = await Promise.all([
    metrics("observations", ["sum totalCost", "sum totalTokens"], query),
    allObservations([IS_ROOT, ...inTraces(ids)], "core"),
    allObservations([...NO_COST, ...inTraces(ids)], "core,usage"),
  ]);
  const firstRoots = new Map(roots.map((row) => [row.traceId, row.id])); // newest first, so the last one stays
  const parts = Map.groupBy(sums, (row) => row.traceId);
  const withoutCost = Map.groupBy(free, (row) => row.traceId);
  return taken.filter((row) => row.id === firstRoots.get(row.traceId)).map((row) => {
    const own = parts.get(row.traceId) ?? [];
    const total = {
      sum_totalTokens: sum(own, (part) => part.sum_totalTokens),
      sum_totalCost: sum(own, (part) => part.sum_totalCost),
    };
    const calls = withoutCost.get(row.traceId) ?? [];
    return {
      ...row,
      ...summed(total, { unknown: calls.some((call) => !isPriced(call)), free: calls.some(isPriced) }),
      level: worst([row.level, ...own.map((part) => part.level)]),
    };
  });
}
