// The page: which view an address opens, the list of traces, and one trace.

import {
  IS_ROOT, LEVELS, all, among, chip, costs, facts, get, go, h, keepFocus, lasted, leave, levelChip, link, live, ms,
  nothing, observations, path, scoreTable, show, shown, spent, table, title, totals, turn, unique, usd, when, where, whole,
} from "./base.js";
import { dashboard, datasets, experiments, prompts, sessions, users } from "./views.js";

const PAGE = 50;
const VIEWS = { traces, sessions, users, dashboard, prompts, datasets, experiments };

async function open() {
  const isOver = leave(), main = document.getElementById("main");
  const [view = "traces", id] = location.pathname.replace(/^\/project\/local(?=\/|$)/, "").split("/").filter(Boolean).map((part) => {
    try { return decodeURIComponent(part); } catch { return part; }
  });
  for (const one of document.querySelectorAll("nav a")) {
    if (one.pathname.endsWith(`/${view}`)) one.setAttribute("aria-current", "page");
    else one.removeAttribute("aria-current");
  }
  main.setAttribute("aria-busy", "true");
  try {
    await (Object.hasOwn(VIEWS, view) ? VIEWS[view](id) : show(title("No such page"), h("p", {}, h("code", {}, location.pathname))));
  } catch (error) {
    if (!isOver()) show(title("This could not be read"), h("p", { role: "alert" }, error.message));
  }
  if (!isOver()) main.removeAttribute("aria-busy");
}
addEventListener("popstate", open);
addEventListener("click", (event) => {
  const to = event.target.closest?.("a[href^='/project/']");
  if (!to || event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  go(to.getAttribute("href"));
  document.getElementById("main").focus({ preventScroll: true });
  scrollTo(0, 0);
});

// Traces

const FILTERS = { text: ["Text in input or output", "refund"], name: ["Name", "answer-…"], user: ["User", "ada"],
  session: ["Session", ""], tag: ["Tag", "team:sales"], environment: ["Environment", "development"], level: ["Level", ""],
  latency: ["Latency, seconds", "2 or <2"], tokens: ["Tokens", "100 or <100"], cost: ["Cost, $", "0.01 or unknown"],
  from: ["From", ""], to: ["To", ""] };

const comparison = (text) => { // "2" and ">2" are at least 2, "<2" is less
  const [, sign, number] = /^\s*([<>]?)=?\s*\$?([\d.]+)\s*$/.exec(text ?? "") ?? [];
  return number ? [sign === "<" ? "<" : ">=", Number(number)] : null;
};
const holds = (value, asked) => !asked || (asked[0] === "<" ? value < asked[1] : value >= asked[1]);

/** What the root must be, and where any observation of the trace may be looked for. */
function conditions(asked) {
  const latency = comparison(asked.latency), level = asked.level ? [among("level", asked.level)] : [];
  const from = asked.from && where("datetime", "startTime", ">=", new Date(asked.from).toISOString());
  const root = [IS_ROOT, from, asked.to && where("datetime", "startTime", "<", new Date(asked.to).toISOString()),
    asked.name && where("string", "name", "contains", asked.name), asked.user && where("string", "userId", "=", asked.user),
    asked.session && where("string", "sessionId", "=", asked.session), asked.environment && among("environment", asked.environment),
    asked.tag && where("arrayOptions", "tags", "any of", [asked.tag]), latency && where("number", "latency", ...latency)];
  const inTexts = asked.text && ["output", "input"].map((column) => [where("string", column, "matches", asked.text), ...level]);
  const seeks = inTexts || (level.length ? [level] : []);
  return { root: root.filter(Boolean), seeks: seeks.map((seek) => (from ? [...seek, from] : seek)) };
}

/** Read on from `cursors` until there is a page of traces; `onRows` sees them as they are found. */
async function findTraces(asked, cursors, onRows) {
  const { root, seeks } = conditions(asked), tokens = comparison(asked.tokens), cost = comparison(asked.cost);
  const found = new Map();
  let looks = 0;
  const batch = async () => {
    if (!seeks.length) {
      const { data, meta } = await observations(root, { limit: PAGE, cursor: cursors[0], fields: "core,basic,trace_context" });
      cursors = [meta.cursor ?? null];
      return data;
    }
    // One after the other, so that what the first finds is shown while the next still looks.
    const i = looks++ % seeks.length;
    if (cursors[i] === null) return [];
    const { data, meta } = await observations(seeks[i], { limit: 2 * PAGE, cursor: cursors[i], fields: "core" });
    cursors = seeks.map((_, j) => (j === i ? meta.cursor ?? null : cursors[j]));
    const ids = unique(data.map((row) => row.traceId)).filter((id) => !found.has(id));
    const query = { limit: 1000, fields: "core,basic,trace_context" };
    return ids.length ? (await observations([...root, among("traceId", ...ids)], query)).data : [];
  };
  do {
    const roots = await batch();
    if (roots.length && !tokens && !asked.cost) onRows([...found.values(), ...roots]);
    const filter = JSON.stringify([among("traceId", ...unique(roots.map((row) => row.traceId)))]);
    const parts = roots.length ? await all("v2/observations", { filter, limit: 1000, fields: "core,basic,model,usage" }) : [];
    const of = Map.groupBy(parts, (row) => row.traceId);
    for (const row of roots) {
      const total = totals(of.get(row.traceId) ?? []);
      const fits = holds(total.tokens, tokens) && (asked.cost === "unknown" ? total.unknown : holds(total.cost ?? 0, cost));
      if (fits) found.set(row.traceId, { ...row, ...total });
    }
    onRows([...found.values()].sort((a, b) => ms(b.startTime) - ms(a.startTime)));
  } while (looks % (seeks.length || 1) || (found.size < PAGE && cursors.some((cursor) => cursor !== null)));
  return cursors.some((cursor) => cursor !== null) ? cursors : null;
}

const TRACE_COLUMNS = [
  ["Time", (row) => when(row.startTime)],
  ["Name", (row) => h("a", { class: "row", href: path("traces", row.traceId) }, row.name || row.traceId)],
  ["Latency", (row) => lasted(spent(row)), "number"],
  ["Tokens", (row) => (row.tokens === undefined ? "…" : row.tokens ? whole(row.tokens) : "–"), "number"],
  ["Cost", (row) => (row.tokens === undefined ? "…" : costs(row)), "number"],
  ["User", (row) => link(row.userId, "users", row.userId)],
  ["Session", (row) => link(row.sessionId, "sessions", row.sessionId)],
  ["Tags", (row) => (row.tags.length ? row.tags.map((tag) => chip(tag)) : null), "tags"],
  ["Level", (row) => levelChip(row.level)],
];

async function traces(id) {
  if (id) return trace(id);
  const query = new URLSearchParams(location.search);
  const asked = Object.fromEntries(Object.keys(FILTERS).map((key) => [key, query.get(key)]).filter(([, value]) => value));
  const cursors = JSON.parse(query.get("cursor") ?? "[]");
  const field = ([key, [label, hint]]) => h("label", {}, label, key === "level"
    ? h("select", { name: key }, ["", ...LEVELS].map((level) => h("option", { value: level, selected: level === (asked.level ?? "") }, level || "any")))
    : h("input", { name: key, value: asked[key], placeholder: hint, type: /from|to$/.test(key) ? "datetime-local" : "search", step: 1 }));
  const apply = () => {
    const given = [...new FormData(form)].filter(([, value]) => value);
    const url = `${path("traces")}?${new URLSearchParams(given)}`;
    if (url.replace(/\?$/, "") !== location.pathname + location.search) go(url, true);
  };
  let typing;
  const form = h("form", { class: "filters", role: "search", "aria-label": "Filter traces",
    onsubmit: (event) => { event.preventDefault(); apply(); },
    oninput: () => { clearTimeout(typing); typing = setTimeout(apply, 400); } }, Object.entries(FILTERS).map(field));
  const list = h("div", { class: "list", "aria-live": "off" }), foot = h("p", { class: "more" });
  const filters = h("details", { class: "filter" }, h("summary", {}, Object.keys(asked).length ? `Filters (${Object.keys(asked).length})` : "Filters"), form);
  filters.open = Object.keys(asked).length > 0 || innerWidth > 700;
  const clear = Object.keys(asked).length ? h("a", { href: path("traces") }, "Clear the filters") : null;
  show(title("Traces", clear), filters, list, foot);
  let last = "";
  const draw = (rows) => keepFocus(list, () => list.replaceChildren(table("Traces", TRACE_COLUMNS, rows)));
  const newest = async () => JSON.stringify((await observations([IS_ROOT], { limit: PAGE, fields: "core,time" })).data);
  const load = async () => {
    foot.textContent = "Looking …";
    let count = 0;
    const next = await findTraces(asked, cursors, (rows) => { count = rows.length; if (count) draw(rows); });
    const isEmpty = !count && !Object.keys(asked).length && !cursors.length;
    if (isEmpty) list.replaceChildren(nothing("Nothing is stored yet", "python 01_langfuse_setup.py", "Run the first lesson in another terminal: its trace appears here by itself."));
    else if (!count) list.replaceChildren(h("p", { class: "quiet" }, "No trace fits these filters."));
    filters.hidden = isEmpty;
    const older = next && h("a", { href: `${path("traces")}?${new URLSearchParams({ ...asked, cursor: JSON.stringify(next) })}` }, "Older traces →");
    foot.replaceChildren(...[h("span", {}, `${count} shown`), cursors.length ? h("a", { href: `${path("traces")}?${new URLSearchParams(asked)}` }, "← Newest") : null, older].filter(Boolean));
  };
  last = await newest();
  await load();
  if (!cursors.length) live(async () => { const now = await newest(); if (now !== last) { last = now; await load(); } });
}

// One trace

/** Observations as [row, depth, number of children], parents first; also those in a circle. */
function flattened(rows) {
  const ids = new Set(rows.map((row) => row.id));
  const below = Map.groupBy(rows, (row) => (ids.has(row.parentObservationId) ? row.parentObservationId : ""));
  const flat = [], seen = new Set();
  const walk = (tops) => {
    for (const todo = tops.map((row) => [row, 0]).reverse(); todo.length;) {
      const [row, depth] = todo.pop();
      if (seen.has(row.id)) continue;
      seen.add(row.id);
      const children = below.get(row.id) ?? [];
      flat.push([row, depth, children.length]);
      todo.push(...children.map((child) => [child, depth + 1]).reverse());
    }
  };
  walk(below.get("") ?? []);
  for (const row of rows) walk([row]);
  return flat;
}

const TRACE_FIELDS = "core,basic,time,model,usage,prompt,metrics,trace_context";

async function trace(id) {
  const folded = new Set(), detail = h("section", { class: "detail", "aria-label": "Observation" });
  let rows = [], scores = [], chosen = new URLSearchParams(location.search).get("observation"), last = "";
  const head = h("div"), tree = h("div", { class: "tree", role: "tree", "aria-label": "Observations", onkeydown: move });

  const choose = (oid, focus = true) => {
    chosen = oid;
    history.replaceState(null, "", `${path("traces", id)}?observation=${encodeURIComponent(oid)}`);
    drawTree(focus);
    return drawDetail();
  };
  function move(event) {
    const items = [...tree.querySelectorAll("[role=treeitem]")], at = items.findIndex((item) => item.dataset.id === chosen);
    const isOpen = items[at]?.getAttribute("aria-expanded"), up = (i) => items[i]?.dataset.id;
    const parent = () => up(items.slice(0, at).findLastIndex((item) => Number(item.ariaLevel) < Number(items[at].ariaLevel)));
    const to = { ArrowDown: up(at + 1), ArrowUp: up(at - 1), Home: up(0), End: up(items.length - 1),
      ArrowLeft: isOpen === "true" ? "fold" : parent(), ArrowRight: isOpen === "false" ? "unfold" : isOpen ? up(at + 1) : null };
    if (!(event.key in to)) return;
    event.preventDefault();
    if (to[event.key] === "fold") folded.add(chosen);
    else if (to[event.key] === "unfold") folded.delete(chosen);
    if (/fold/.test(to[event.key])) drawTree(true);
    else if (to[event.key]) choose(to[event.key]);
  }
  function drawTree(focus) {
    const start = Math.min(...rows.map((row) => ms(row.startTime)));
    const span = Math.max(...rows.map((row) => ms(row.endTime ?? row.startTime))) - start || 1;
    let hiddenBelow = Infinity;
    const items = flattened(rows).map(([row, depth, children]) => {
      if (depth > hiddenBelow) return null;
      hiddenBelow = folded.has(row.id) ? depth : Infinity;
      // The bars share three quarters of the column, so that the duration fits behind each.
      const part = (time) => ((time / span) * 74), left = Math.min(part(ms(row.startTime) - start), 73.6), width = Math.max(part(spent(row) ?? 0), 0.4);
      const bar = h("span", { class: `bar ${row.type.toLowerCase()} ${row.level}` }), time = h("span", { class: "took" }, lasted(spent(row)) ?? "…");
      Object.assign(bar.style, { left: `${left}%`, width: `${width}%` });
      time.style.left = `calc(${left + width}% + .4rem)`;
      const first = row.timeToFirstToken ? h("span", { class: "first", title: `first token after ${lasted(row.timeToFirstToken * 1000)}` }) : null;
      if (first) first.style.left = `${left + part(row.timeToFirstToken * 1000)}%`;
      const fold = h("span", { class: "fold", "aria-hidden": "true", onclick: (event) => {
        event.stopPropagation(); folded[folded.has(row.id) ? "delete" : "add"](row.id); drawTree(true); } }, children ? (folded.has(row.id) ? "▸" : "▾") : "");
      const name = h("span", { class: "name" }, fold, h("b", {}, row.name || row.id), chip(row.type.toLowerCase(), row.type), row.level === "DEFAULT" ? null : chip(row.level, row.level));
      name.style.paddingInlineStart = `${Math.min(depth, 12) * 1.1}rem`;
      return h("div", { role: "treeitem", "aria-level": depth + 1, "aria-expanded": children ? String(!folded.has(row.id)) : null, "aria-selected": String(row.id === chosen),
        tabindex: row.id === chosen ? 0 : -1, "data-id": row.id, onclick: () => choose(row.id) },
      name, h("span", { class: "track" }, bar, first, time),
      h("span", { class: "number" }, row.totalUsage ? whole(row.totalUsage) : ""), h("span", { class: "number" }, row.model || Object.keys(row.costDetails).length ? costs(totals([row])) : ""));
    });
    tree.replaceChildren(...items.filter(Boolean));
    if (focus) tree.querySelector("[aria-selected=true]")?.focus({ preventScroll: false });
  }
  async function drawDetail() {
    const row = rows.find((one) => one.id === chosen), signal = turn();
    const filter = JSON.stringify([where("string", "id", "=", row.id)]), query = { traceId: id, filter, limit: 1 };
    let { data: [full] } = await get("v2/observations", { ...query, fields: "core,io,metadata" });
    const cut = Object.entries(full.metadata).filter(([, value]) => value.length === 200).map(([key]) => key);
    if (cut.length) ({ data: [full] } = await get("v2/observations", { ...query, fields: "core,io,metadata", expandMetadata: cut.join(",") }));
    if (row.id === chosen && !signal.aborted) detail.replaceChildren(...described(row, full, scores, row.id === rows[0].id));
  }
  const load = async () => {
    const query = { traceId: id, limit: 1000, fields: TRACE_FIELDS };
    [rows, scores] = await Promise.all([all("v2/observations", query), all("v3/scores", { traceId: id, limit: 100, fields: "details,subject" })]);
    const now = JSON.stringify([rows, scores]);
    if (now === last) return;
    last = now;
    if (!rows.length) return show(title("No such trace"), h("p", {}, "Nothing is stored for ", h("code", {}, id), ". The lesson may have sent it elsewhere, or another database is served."));
    rows.sort((a, b) => ms(a.startTime) - ms(b.startTime));
    rows = flattened(rows).map(([row]) => row);
    const root = rows.find((row) => row.isRootObservation) ?? rows[0], total = totals(rows);
    chosen = rows.some((row) => row.id === chosen) ? chosen : root.id;
    head.replaceChildren(title(root.traceName || root.name || id, total.level === "ERROR" ? chip("ERROR", "ERROR") : null),
      facts([["Started", when(root.startTime)], ["Latency", lasted(spent(root))], ["Tokens", total.tokens ? whole(total.tokens) : null], ["Cost", total.calls ? costs(total) : null],
        ["User", link(root.userId, "users", root.userId)], ["Session", link(root.sessionId, "sessions", root.sessionId)],
        ["Tags", root.tags.map((tag) => chip(tag))], ["Environment", root.environment], ["Release", root.release], ["Version", root.version]]));
    if (!tree.isConnected) show(head, h("div", { class: "trace" }, h("section", { class: "outline" }, h("div", { class: "columns", "aria-hidden": "true" },
      ["Observation", "Time", "Tokens", "Cost"].map((text) => h("span", {}, text))), tree), detail));
    drawTree(tree.contains(document.activeElement));
    await drawDetail();
  };
  await load();
  tree.querySelector("[aria-selected=true]")?.scrollIntoView({ block: "nearest" });
  live(load);
}

function described(row, full, scores, isFirst) {
  const own = scores.filter(({ subject }) => subject.id === row.id || (isFirst && subject.kind === "trace"));
  const buckets = Object.keys({ ...row.usageDetails, ...row.costDetails }).filter((key) => key !== "total");
  const price = (key) => (!Object.keys(row.costDetails).length ? "unknown" : row.costDetails[key] === undefined ? "–" : usd(row.costDetails[key]));
  const [ours, theirs] = [false, true].map((wanted) => Object.fromEntries(Object.entries(full.metadata).filter(([key]) => /^(scope|resourceAttributes)\./.test(key) === wanted)));
  const part = (name, ...content) => h("section", {}, h("h3", {}, name), content);
  return [h("h2", {}, row.name || row.id, chip(row.type.toLowerCase(), row.type), row.level === "DEFAULT" ? null : chip(row.level, row.level)),
    row.statusMessage ? h("p", { class: `status ${row.level}` }, row.statusMessage) : null,
    facts([["Took", lasted(spent(row))], ["First token", row.timeToFirstToken ? lasted(row.timeToFirstToken * 1000) : null], ["Model", row.model],
      ["Prompt", row.promptName ? h("a", { href: `${path("prompts", row.promptName)}?version=${row.promptVersion}` }, `${row.promptName}, version ${row.promptVersion}`) : null]]),
    part("Input", shown(full.input)), part("Output", shown(full.output)),
    own.length ? part("Scores", scoreTable(own)) : null,
    buckets.length ? part("Usage and cost", table("Usage", [["Bucket", (key) => key], ["Tokens", (key) => (row.usageDetails[key] === undefined ? null : whole(row.usageDetails[key])), "number"],
      ["Cost", price, "number"]], [...buckets, "total"])) : null,
    Object.keys(row.modelParameters ?? {}).length ? part("Model parameters", shown(row.modelParameters)) : null,
    Object.keys(ours).length ? part("Metadata", shown(ours)) : null,
    h("details", {}, h("summary", {}, "Ids, times and where it came from"), shown({ id: row.id, traceId: row.traceId, startTime: row.startTime, endTime: row.endTime, ...theirs })),
  ].filter(Boolean);
}

open();
