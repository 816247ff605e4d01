// What every view needs: elements, texts of values, and the public API, asked as a script would.
// Whatever a trace contains becomes a text node or an attribute, never HTML.

const BASE = "/project/local", LIVE_MS = 2000;
const main = document.getElementById("main"), said = document.getElementById("said");
let leaving = new AbortController(); // aborted when another view opens

/** Open an address of this page. */
export function go(url, replaces = false) {
  history[replaces ? "replaceState" : "pushState"](null, "", url);
  dispatchEvent(new PopStateEvent("popstate"));
}
/** Stop what the view before still asks for; return whether it is this view's turn no more. */
export function leave() {
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  return () => signal.aborted;
}
export const turn = () => leaving.signal;

// Elements

function put(node, props, children) {
  for (const [key, value] of Object.entries(props)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value);
  }
  node.append(...children.flat(9).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}
export const h = (tag, props, ...children) => put(document.createElement(tag), props ?? {}, children);
export const s = (tag, props, ...children) =>
  put(document.createElementNS("http://www.w3.org/2000/svg", tag), props, children);
export const path = (...parts) => `${BASE}/${parts.map(encodeURIComponent).join("/")}`;
export const link = (text, ...parts) => (text ? h("a", { href: path(...parts) }, text) : null);
export const chip = (text, kind = "") => h("span", { class: `chip ${kind}` }, text);
export const shorter = (text, most = 160) => (text.length > most ? `${text.slice(0, most)}…` : text);
export const show = (...nodes) => main.replaceChildren(...nodes.flat().filter(Boolean));
export const title = (text, ...more) => {
  document.title = `${text} · local_langfuse`;
  return h("div", { class: "title" }, h("h1", {}, text), more);
};

/** A table whose rows become cards on a narrow screen: columns are [label, cell of row, class]. */
export function table(name, columns, rows) {
  const cellOf = (label, value, kind = "") => h("td", { "data-label": label, class: value === null || value === undefined ? `${kind} absent` : kind }, value ?? "–");
  const row = (of) => h("tr", {}, columns.map(([label, cell, kind]) => cellOf(label, cell(of), kind)));
  return h("table", { "aria-label": name },
    h("thead", {}, h("tr", {}, columns.map(([label, , kind]) => h("th", { class: kind, scope: "col" }, label)))),
    h("tbody", {}, rows.map(row)));
}
export const facts = (pairs) => h("dl", { class: "facts" }, pairs.filter(([, value]) => value?.length !== 0 && value)
  .map(([key, value]) => h("div", {}, h("dt", {}, key), h("dd", {}, value))));
export const nothing = (what, command, why) => h("section", { class: "nothing" }, h("h2", {}, what), h("p", {}, why),
  h("pre", {}, command), h("p", {}, "This page shows it as soon as it is stored."));

// Values

export const sum = (rows, of) => rows.reduce((total, row) => total + of(row), 0);
export const unique = (list) => [...new Set(list)];
export const whole = (n) => Math.round(n).toLocaleString("en");
export const rounded = (n) => String(Number(n.toPrecision(4)));
export const usd = (n) => (n === 0 ? "$0" : n >= 1 ? `$${n.toFixed(2)}` : `$${Number(n.toPrecision(3)).toFixed(10).replace(/0+$/, "")}`);
export const lasted = (ms) => (ms === null || ms === undefined ? null : ms > 0 && ms < 1 ? `${ms.toFixed(2)} ms` : ms < 1000
  ? `${Math.round(ms)} ms` : ms < 60000 ? `${(ms / 1000).toFixed(2)} s` : `${Math.floor(ms / 60000)} min ${Math.round(ms / 1000) % 60} s`);
/** Milliseconds since 1970 of a time with microseconds, which Date.parse would cut off. */
export const ms = (time) => (time ? Date.parse(`${time.slice(0, 19)}Z`) + Number(`0.${/\.(\d+)/.exec(time)?.[1] ?? 0}`) * 1000 : null);
export const spent = (row) => (row.endTime ? ms(row.endTime) - ms(row.startTime) : null);
export const when = (time) => h("time", { datetime: time, title: time }, new Date(time).toLocaleString("en-GB",
  { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit" }));
export const LEVELS = ["DEBUG", "DEFAULT", "WARNING", "ERROR"];
export const levelChip = (level) => (level === "DEFAULT" ? h("span", { class: "quiet" }, level) : chip(level, level));

/** What observations come to. A model whose price is not known has no costDetails: no $0. */
export function totals(rows) {
  const priced = rows.filter((row) => Object.keys(row.costDetails).length);
  return { tokens: sum(rows, (row) => row.totalUsage), calls: rows.filter((row) => row.model).length,
    cost: priced.length ? sum(priced, (row) => row.totalCost) : null,
    unknown: rows.some((row) => row.model && !Object.keys(row.costDetails).length),
    level: LEVELS[Math.max(...rows.map((row) => LEVELS.indexOf(row.level)), 0)] };
}
export const costs = ({ cost, unknown }) => [cost === null ? null : usd(cost), unknown ? "unknown" : null].filter(Boolean).join(" + ") || "–";

// The API

export async function get(name, query = {}, isSecond = false) {
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== null);
  const answer = await fetch(`/api/public/${name}?${new URLSearchParams(given)}`, { signal: leaving.signal });
  if (answer.status === 401 && !isSecond) { // the server was started again: sign in again
    await fetch("/", { cache: "no-store" });
    return get(name, query, true);
  }
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.message);
  return body;
}
export async function all(name, query) {
  const rows = [];
  for (let cursor; ;) {
    const { data, meta } = await get(name, { ...query, cursor });
    rows.push(...data);
    if (!(cursor = meta.cursor)) return rows;
  }
}
export async function pages(name, query) { // the lists that number their pages
  const first = await get(name, { ...query, limit: 100 });
  const rest = Array.from({ length: first.meta.totalPages - 1 }, (_, i) => get(name, { ...query, limit: 100, page: i + 2 }));
  return [first, ...await Promise.all(rest)].flatMap((answer) => answer.data);
}
export const where = (type, column, operator, value) => ({ type, column, operator, value });
export const among = (column, ...values) => where("stringOptions", column, "any of", values);
export const filled = (column) => where("stringOptions", column, "none of", [""]);
export const IS_ROOT = where("boolean", "isRootObservation", "=", true), IS_CALL = among("type", "GENERATION", "EMBEDDING");
export const observations = (filter, query = {}) => get("v2/observations", { filter: JSON.stringify(filter), ...query });
export const EVER = { fromTimestamp: "2000-01-01T00:00:00Z", toTimestamp: "2100-01-01T00:00:00Z" };
export async function metrics(view, names, dimensions = [], filters = [], more = {}) {
  const parts = names.map((name) => name.split(" ")).map(([aggregation, measure]) => ({ aggregation, measure }));
  const query = { view, metrics: parts, dimensions: dimensions.map((field) => ({ field })), filters, ...EVER,
    config: { row_limit: 1000 }, ...more };
  return (await get("v2/metrics", { query: JSON.stringify(query) })).data;
}

/** Call `refresh` again and again while this view is open and can be seen. */
export function live(refresh) {
  const { signal } = leaving;
  const again = async () => {
    if (signal.aborted) return;
    try {
      if (!document.hidden) { await refresh(); said.textContent = ""; }
    } catch (error) {
      if (error.name !== "AbortError") said.textContent = "The local instance does not answer: is it still running?";
    }
    setTimeout(again, LIVE_MS);
  };
  setTimeout(again, LIVE_MS);
}

export function keepFocus(within, change) {
  const key = within.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  change();
  if (key) within.querySelector(`a[href="${CSS.escape(key)}"]`)?.focus();
}

// Scores, inputs and outputs

export const scoreText = ({ value, dataType }) => (dataType === "NUMERIC" ? rounded(value) : String(value));
export const scoreTable = (scores) => table("Scores", [["Score", (score) => score.name], ["Value", (score) => scoreText(score), "number"],
  ["Comment", (score) => score.comment], ["Of", ({ subject }) => subject.kind]], scores);

/** An input or output: messages as a conversation, JSON as a tree, anything else as text. */
export function shown(value) {
  if (typeof value === "string" && /^\s*[[{"]/.test(value)) { try { value = JSON.parse(value); } catch { /* a text that only looks like JSON */ } }
  if (value === null || value === undefined || value === "") return h("p", { class: "quiet" }, "none");
  const isMessage = (one) => one && typeof one === "object" && typeof one.role === "string" && ("content" in one || "tool_calls" in one);
  const list = Array.isArray(value) ? value : Array.isArray(value?.messages) ? value.messages : [value];
  if (list.length && list.every(isMessage)) {
    const { messages: _, ...others } = Array.isArray(value) || value === list[0] ? {} : value;
    return [list.map(message), Object.keys(others).length ? json(others) : null];
  }
  return typeof value === "object" ? h("div", { class: "json" }, json(value)) : h("pre", {}, String(value));
}
function message({ role, content, ...others }) {
  const extra = Object.fromEntries(Object.entries(others).filter(([, value]) => value !== null && value?.length !== 0));
  return h("div", { class: `message ${role === "user" ? "user" : ""}` }, h("b", {}, role), content === null || content === undefined ? null
    : typeof content === "string" ? h("div", { class: "said" }, content) : json(content), Object.keys(extra).length ? json(extra) : null);
}
function json(value, key = null, depth = 0) {
  const label = key === null ? null : h("span", { class: "key" }, `${key}: `);
  if (value === null || typeof value !== "object") {
    return h("div", {}, label, h("span", { class: typeof value === "string" ? "text" : "literal" }, typeof value === "string" ? value : String(value)));
  }
  const entries = Object.entries(value), size = `${Array.isArray(value) ? "list" : "object"} of ${entries.length}`;
  if (!entries.length) return h("div", {}, label, h("span", { class: "quiet" }, Array.isArray(value) ? "[]" : "{}"));
  const body = h("div", { class: "below" }, depth > 60 ? JSON.stringify(value) : entries.map(([name, one]) => json(one, name, depth + 1)));
  if (key === null) return body;
  return h("details", depth < 3 ? { open: "" } : {}, h("summary", {}, label, h("span", { class: "quiet" }, size)), body);
}
