// What every view needs: following what is stored, drawing, and showing values as text.
// Anything in a trace becomes a text node or an attribute, never HTML.

const BASE = "/project/local";
const LIVE_MS = 2000;
const main = document.getElementById("main");
const said = document.getElementById("said");

// One view is open at a time. A view only ever waits for the API, and leaving the view aborts that wait.
// So a view that you left stops, and cannot draw over the next one.

let leaving = new AbortController();
let opened = null;
let shownLast = null;

/** Leave the open view for the one with this name; return the signal that tells the new one when you leave it. */
export function leaveFor(name) {
  opened = name;
  leaving.abort();
  leaving = new AbortController();
  said.textContent = "";
  return leaving.signal;
}

export const openView = () => leaving.signal;

/** Open an address within this page. */
export function go(url, replaces = false) {
  history[replaces ? "replaceState" : "pushState"](null, "", url);
  dispatchEvent(new Event("go"));
}

/**
 * Call `draw` with what `ask` returns, and again whenever that changes, while the view is open and visible.
 * `ask` runs every two seconds, so it should ask for something small: a count, a list of ids.
 */
export async function follow(ask, draw) {
  const { signal } = leaving;
  let answer = await ask();
  await draw(answer);
  const again = async () => {
    if (signal.aborted) return;
    try {
      if (!document.hidden) {
        const now = await ask();
        if (JSON.stringify(now) !== JSON.stringify(answer)) await draw(now);
        answer = now;
        said.textContent = "";
      }
    } catch (error) {
      if (signal.aborted) return;
      said.textContent = error.message;
    }
    setTimeout(again, LIVE_MS);
  };
  setTimeout(again, LIVE_MS);
}

/** Do what the user asked for in the open view; if it fails, say why. */
export async function attempt(work) {
  const { signal } = leaving;
  try {
    await work();
  } catch (error) {
    if (!signal.aborted) said.textContent = error.message;
  }
}

// Drawing. A view creates all its elements again from what it knows, and `show` changes only what differs on the
// page. So the user keeps the focus, the scroll position, the selection and whatever was opened. A handler must
// find its elements through its event: the ones created with it may never be shown.

const isGiven = (child) => child !== null && child !== undefined && child !== false;

function filled(node, props, children) {
  for (const [key, value] of Object.entries(props)) {
    if (key.startsWith("on")) {
      node[key] = value;
      node.handlers = { ...node.handlers, [key]: value };
    } else if (key === "style") Object.assign(node.style, value);
    else if (isGiven(value)) node.setAttribute(key, value);
  }
  node.append(...children.flat(Infinity).filter(isGiven));
  return node;
}

/** An HTML element: `h("a", { href }, "text", more)`; children that are null or false are left out. */
export const h = (tag, props, ...children) => filled(document.createElement(tag), props, children);

/** An SVG element. */
export const s = (tag, props, ...children) =>
  filled(document.createElementNS("http://www.w3.org/2000/svg", tag), props, children);

export function show(...nodes) {
  if (shownLast !== opened) main.replaceChildren();
  shownLast = opened;
  const focused = document.activeElement;
  updateChildren(main, h("div", {}, nodes));
  // Moving an element takes the focus away from it.
  if (focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
}

/** Make `old` look like `fresh`. An element with `data-own` belongs to the user and stays as it is. */
function update(old, fresh) {
  if (old.nodeName !== fresh.nodeName || old.dataset?.key !== fresh.dataset?.key) return old.replaceWith(fresh);
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  if ("own" in old.dataset) return;
  const names = [...old.attributes, ...fresh.attributes].map(({ name }) => name);
  for (const name of unique(names)) {
    const value = fresh.getAttribute(name);
    if (name !== "open" && value !== old.getAttribute(name)) setAttribute(old, name, value);
  }
  for (const key of Object.keys(old.handlers ?? {})) old[key] = null;
  Object.assign(old, fresh.handlers, { handlers: fresh.handlers });
  updateChildren(old, fresh);
}

function setAttribute(node, name, value) {
  if (name === "style") node.style.cssText = value ?? ""; // the policy forbids setting this attribute
  else if (value === null) node.removeAttribute(name);
  else node.setAttribute(name, value);
  // What the user typed or chose hides these attributes until they change.
  if (name === "value") node.value = value ?? "";
  if (name === "checked" || name === "selected") node[name] = value !== null;
}

/** Children with `data-key` are found again by their key, wherever they are now; others by their position. */
function updateChildren(old, fresh) {
  const keyOf = (node) => node.dataset?.key;
  const wanted = new Set([...fresh.children].map(keyOf));
  for (const child of [...old.children]) {
    if (!wanted.has(keyOf(child))) child.remove();
  }
  const byKey = new Map([...old.children].map((child) => [keyOf(child), child]));
  let next = old.firstChild;
  for (const child of [...fresh.childNodes]) {
    const same = keyOf(child) === undefined ? next : byKey.get(keyOf(child));
    byKey.delete(keyOf(child)); // two spans may have the same id
    if (!same) {
      old.insertBefore(child, next);
      continue;
    }
    if (same === next) next = next.nextSibling;
    else old.insertBefore(same, next);
    update(same, child);
  }
  while (next) {
    const rest = next;
    next = next.nextSibling;
    rest.remove();
  }
}

// Parts of views

export const path = (...parts) => `${BASE}/${parts.map(encodeURIComponent).join("/")}`;
export const withQuery = (address, query) => `${address}?${new URLSearchParams(query)}`;
export const link = (text, ...parts) => (text ? h("a", { href: path(...parts) }, text) : null);
export const rowLink = (text, ...parts) => h("a", { class: "row", href: path(...parts) }, text);
export const chip = (text, kind = "") => h("span", { class: `chip ${kind}` }, text);
export const typeChip = (row) => chip(row.type.toLowerCase(), row.type);
export const levelChip = ({ level }) => (level === "DEFAULT" ? null : chip(level, level));

export function title(text, ...more) {
  document.title = `${text} · local_langfuse`;
  return h("div", { class: "title" }, h("h1", {}, text), more);
}

/**
 * A table whose rows become cards on a narrow screen. A column is [label, function from row to cell, class];
 * `keyOf` tells the rows apart when the table is drawn again.
 */
export function table(name, columns, rows, keyOf = () => null) {
  const cell = (row, [label, content, kind = ""]) => {
    const value = content(row);
    return h("td", { "data-label": label, class: isGiven(value) ? kind : `${kind} absent` }, value ?? "–");
  };
  const head = columns.map(([label, , kind]) => h("th", { class: kind, scope: "col" }, label));
  const body = rows.map((row) => h("tr", { "data-key": keyOf(row) }, columns.map((column) => cell(row, column))));
  return h("table", { "aria-label": name }, h("thead", {}, h("tr", {}, head)), h("tbody", {}, body));
}

/** Names with their values; a name without a value is left out. */
export function facts(pairs) {
  const known = pairs.filter(([, value]) => value && value.length !== 0);
  return h("dl", { class: "facts" }, known.map(([key, value]) => h("div", {}, h("dt", {}, key), h("dd", {}, value))));
}

export const nothing = (what, command, why) => h("section", { class: "nothing" },
  h("h2", {}, what), h("p", {}, why), h("pre", {}, command), h("p", {}, "It appears here as soon as it is stored."));

export const scoreText = ({ value, dataType }) => (dataType === "NUMERIC" ? rounded(value) : String(value));
export const scoreTable = (scores) => table("Scores", [
  ["Score", (score) => score.name],
  ["Value", scoreText, "number"],
  ["Comment", (score) => score.comment],
  ["Of", ({ subject }) => subject.kind],
], scores, (score) => score.id);

// Values

export const sum = (rows, of) => rows.reduce((total, row) => total + of(row), 0);
export const unique = (list) => [...new Set(list)];
export const shorter = (text, most = 160) => (text.length > most ? `${text.slice(0, most)}…` : text);
export const whole = (n) => Math.round(n).toLocaleString("en");
export const rounded = (n) => String(Number(n.toPrecision(4)));

export function usd(n) {
  if (n === 0) return "$0";
  if (n >= 1) return `$${n.toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 })}`;
  return `$${Number(n.toPrecision(3)).toFixed(10).replace(/\.?0+$/, "")}`;
}

/** Milliseconds as readable text; null if there are none. */
export function lasted(ms) {
  if (ms === null || ms === undefined) return null;
  if (ms > 0 && ms < 1) return `${ms.toFixed(2)} ms`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(2)} s`;
  const seconds = Math.round(ms / 1000);
  return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
}

/** Milliseconds since 1970 for a time with microseconds, which Date.parse would cut off. */
export function ms(time) {
  const [, second, fraction = "0"] = /^(.{19})(?:\.(\d+))?/.exec(time);
  return Date.parse(`${second}Z`) + Number(`0.${fraction}`) * 1000;
}
export const spent = (row) => (row.endTime ? ms(row.endTime) - ms(row.startTime) : null);

const CLOCK = { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit" };
export const timeText = (time) => new Date(time).toLocaleString("en-GB", CLOCK);
export const when = (time) => h("time", { datetime: time, title: time }, timeText(time));

export const LEVELS = ["DEBUG", "DEFAULT", "WARNING", "ERROR"];
export const worst = (levels) => LEVELS[Math.max(...levels.map((level) => LEVELS.indexOf(level)))] ?? "DEFAULT";
export const isPriced = (row) => Object.keys(row.costDetails).length > 0;

/** The totals of observations. A call with an unknown price has no costDetails, which is not $0. */
export function totals(rows) {
  const priced = rows.filter(isPriced);
  return {
    tokens: sum(rows, (row) => row.totalUsage),
    cost: priced.length ? sum(priced, (row) => row.totalCost) : null,
    unknown: rows.some((row) => row.model && !isPriced(row)),
    level: worst(rows.map((row) => row.level)),
  };
}
export const costs = ({ cost, unknown }) =>
  [cost === null ? null : usd(cost), unknown ? "unknown" : null].filter(Boolean).join(" + ") || "–";

// Inputs and outputs

/** An input or output: messages as a conversation, JSON as a tree, anything else as text. */
export function shown(value) {
  const known = typeof value === "string" ? parsed(value) : value;
  if (known === null || known === undefined || known === "") return h("p", { class: "quiet" }, "none");
  const list = Array.isArray(known) ? known : Array.isArray(known.messages) ? known.messages : [known];
  if (list.length && list.every(isMessage)) {
    const { messages, ...others } = list === known.messages ? known : {};
    return [list.map(message), Object.keys(others).length ? h("div", { class: "json" }, json(others)) : null];
  }
  return typeof known === "object" ? h("div", { class: "json" }, json(known)) : h("pre", {}, String(known));
}

/** The value of a text that is JSON, or the text itself. A number that JavaScript would round stays text. */
export function parsed(text) {
  if (!/^\s*[[{"]/.test(text)) return text;
  const exact = (_, value, context) =>
    typeof value === "number" && context && String(value) !== context.source ? context.source : value;
  try {
    return JSON.parse(text, exact);
  } catch {
    return text; // it only looks like JSON
  }
}

const isMessage = (one) => typeof one?.role === "string" && ("content" in one || "tool_calls" in one);

function message({ role, content, ...others }) {
  const extra = Object.fromEntries(Object.entries(others).filter(([, value]) => value !== null && value?.length !== 0));
  const isText = Array.isArray(content) && content.every((part) => typeof part?.text === "string");
  const text = isText ? content.map((part) => part.text).join("\n") : content;
  return h("div", { class: role === "user" ? "message user" : "message" },
    h("b", {}, role),
    typeof text === "string" ? h("div", { class: "said" }, text) : isGiven(text) ? json(text) : null,
    Object.keys(extra).length ? json(extra) : null);
}

const OPEN_DEPTH = 3;
const MOST_DEPTH = 60;

function json(value, key = null, depth = 0) {
  const label = key === null ? null : h("span", { class: "key" }, `${key}: `);
  if (value === null || typeof value !== "object") {
    return h("div", {}, label, h("span", { class: typeof value === "string" ? "text" : "literal" }, String(value)));
  }
  const entries = Object.entries(value);
  const isList = Array.isArray(value);
  if (!entries.length) return h("div", {}, label, h("span", { class: "quiet" }, isList ? "[]" : "{}"));
  const below = depth > MOST_DEPTH ? JSON.stringify(value) : entries.map(([name, one]) => json(one, name, depth + 1));
  const body = h("div", { class: "below" }, below);
  if (key === null) return body;
  const size = h("span", { class: "quiet" }, `${isList ? "list" : "object"} of ${entries.length}`);
  return h("details", { open: depth < OPEN_DEPTH ? "" : null }, h("summary", {}, label, size), body);
}
