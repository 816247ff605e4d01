// One trace: its observations as a tree and a timeline, and everything stored about the chosen one.

import { all, is, observations } from "./api.js";
import {
  attempt, chip, costs, facts, follow, h, isPriced, lasted, levelChip, link, ms, path, scoreTable, show, shown, spent,
  table, title, totals, typeChip, usd, when, whole, withQuery,
} from "./base.js";

const FIELDS = "core,basic,time,model,usage,prompt,metrics,trace_context";
const BARS = 74; // percent of the column, so that the duration fits after each bar
const LEAST = 0.4;
const METADATA_LENGTH = 200; // longer values are cut, unless you ask for them by key

export async function trace(id) {
  const folded = new Set();
  let rows = [];
  let scores = [];
  let chosen = new URLSearchParams(location.search).get("observation");
  let full = null; // input, output and metadata of the chosen one, or still of the previous one

  const draw = () => {
    const root = rows.find((row) => row.isRootObservation) ?? rows[0];
    const row = rows.find((one) => one.id === full?.id);
    show(...heading(id, root, totals(rows)), h("div", { class: "trace" },
      h("section", { class: "outline" },
        h("div", { class: "columns", "aria-hidden": "true" },
          ["Observation", "Time", "Tokens", "Cost"].map((text) => h("span", {}, text))),
        tree()),
      h("section", { class: "detail", "aria-label": "Observation", "data-key": full?.id },
        row ? described(row, full, scores, row === rows[0]) : null)));
  };

  const tree = () => {
    const begin = Math.min(...rows.map((row) => ms(row.startTime)));
    const end = Math.max(...rows.map((row) => ms(row.endTime ?? row.startTime)));
    const items = visible(rows, folded).map(([row, depth, children]) => {
      const sign = folded.has(row.id) ? "▸" : "▾";
      const props = {
        role: "treeitem", "data-key": row.id, tabindex: row.id === chosen ? 0 : -1,
        "aria-level": depth + 1, "aria-selected": String(row.id === chosen),
        "aria-expanded": children ? String(!folded.has(row.id)) : null,
        onclick: (event) => (event.target.closest(".fold") && children ? fold(row.id) : choose(row.id)),
      };
      return h("div", props,
        h("span", { class: "name", style: { paddingInlineStart: `${Math.min(depth, 12) * 1.1}rem` } },
          h("span", { class: "fold", "aria-hidden": "true" }, children ? sign : ""),
          h("b", {}, row.name || row.id), typeChip(row), levelChip(row)),
        bar(row, begin, end - begin || 1),
        h("span", { class: "number" }, row.totalUsage ? whole(row.totalUsage) : ""),
        h("span", { class: "number" }, row.model || isPriced(row) ? costs(totals([row])) : ""));
    });
    return h("div", { class: "tree", role: "tree", "aria-label": "Observations", onkeydown: move }, items);
  };

  const read = async () => {
    const wanted = chosen;
    const query = { traceId: id, limit: 1, fields: "core,io,metadata" };
    const ask = (more) => observations([is("id", wanted)], { ...query, ...more });
    let { data: [answer] } = await ask();
    const cut = Object.entries(answer?.metadata ?? {}).filter(([, value]) => value?.length === METADATA_LENGTH);
    if (cut.length) ({ data: [answer] } = await ask({ expandMetadata: cut.map(([key]) => key).join() }));
    if (wanted !== chosen || !answer) return; // another one was chosen in the meantime, or this one was deleted
    full = answer;
    draw();
  };

  const choose = (oid) => {
    chosen = oid;
    history.replaceState(null, "", withQuery(path("traces", id), { observation: oid }));
    draw();
    chosenItem().focus();
    attempt(read);
  };

  const fold = (oid) => {
    if (!folded.delete(oid)) folded.add(oid);
    if (visible(rows, folded).some(([row]) => row.id === chosen)) draw();
    else choose(oid);
  };

  const move = (event) => {
    const items = visible(rows, folded);
    const at = items.findIndex(([row]) => row.id === chosen);
    const [, depth, children] = items[at];
    const isOpen = children > 0 && !folded.has(chosen);
    const parent = items.slice(0, at).findLast(([, above]) => above < depth);
    const to = {
      ArrowDown: items[at + 1],
      ArrowUp: items[at - 1],
      Home: items[0],
      End: items.at(-1),
      ArrowLeft: isOpen ? items[at] : parent,
      ArrowRight: isOpen ? items[at + 1] : children ? items[at] : null,
    };
    if (!Object.hasOwn(to, event.key)) return;
    event.preventDefault();
    const [row] = to[event.key] ?? [];
    if (row?.id === chosen && event.key.match(/Left|Right/)) fold(chosen);
    else if (row) choose(row.id);
  };

  const ask = () => Promise.all([ // small, compared with what is drawn
    all("v2/observations", { traceId: id, limit: 1000, fields: "core,time" }),
    all("v3/scores", { traceId: id, limit: 100, fields: "details,subject" }),
  ]);
  let isNew = true;
  await follow(ask, async ([, now]) => {
    scores = now;
    rows = await all("v2/observations", { traceId: id, limit: 1000, fields: FIELDS });
    if (!rows.length) {
      return show(title("No such trace"), h("p", {}, "Nothing is stored for ", h("code", {}, id),
        ". The lesson may have sent it elsewhere, or this page may show a different file."));
    }
    rows = flattened(rows.toSorted((a, b) => ms(a.startTime) - ms(b.startTime))).map(([row]) => row);
    if (!rows.some((row) => row.id === chosen)) chosen = (rows.find((row) => row.isRootObservation) ?? rows[0]).id;
    if (!visible(rows, folded).some(([row]) => row.id === chosen)) folded.clear(); // it is now below a folded one
    draw();
    if (isNew) chosenItem().scrollIntoView({ block: "nearest" });
    isNew = false;
    await read();
  });
}

const chosenItem = () => document.querySelector("[role=treeitem][aria-selected=true]");

/** Observations as [row, depth, number of children], parents first; even if they form a cycle. */
function flattened(rows) {
  const ids = new Set(rows.map((row) => row.id));
  const below = Map.groupBy(rows, (row) => (ids.has(row.parentObservationId) ? row.parentObservationId : ""));
  const flat = [];
  const seen = new Set();
  const walk = (tops) => {
    const todo = tops.map((row) => [row, 0]).reverse();
    while (todo.length) {
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

/** The same, without anything below a folded one. */
function visible(rows, folded) {
  let hidden = Infinity; // deeper than this
  return flattened(rows).filter(([row, depth]) => {
    if (depth > hidden) return false;
    hidden = folded.has(row.id) ? depth : Infinity;
    return true;
  });
}

function bar(row, begin, span) {
  const part = (time) => (time / span) * BARS;
  const left = Math.min(part(ms(row.startTime) - begin), BARS - LEAST);
  const width = Math.max(part(spent(row) ?? 0), LEAST);
  const toFirst = row.timeToFirstToken ? row.timeToFirstToken * 1000 : null;
  return h("span", { class: "track" },
    h("span", {
      class: `bar ${row.type.toLowerCase()} ${row.level}`, style: { left: `${left}%`, width: `${width}%` },
    }),
    toFirst && h("span", {
      class: "first-token", style: { left: `${left + part(toFirst)}%` }, title: `first token after ${lasted(toFirst)}`,
    }),
    h("span", { class: "took", style: { left: `calc(${left + width}% + .4rem)` } }, lasted(spent(row)) ?? "…"));
}

function heading(id, root, total) {
  return [
    title(root.traceName || root.name || id, total.level === "ERROR" ? chip("ERROR", "ERROR") : null),
    facts([
      ["Started", when(root.startTime)],
      ["Latency", lasted(spent(root))],
      ["Tokens", total.tokens ? whole(total.tokens) : null],
      ["Cost", total.cost !== null || total.unknown ? costs(total) : null],
      ["User", link(root.userId, "users", root.userId)],
      ["Session", link(root.sessionId, "sessions", root.sessionId)],
      ["Tags", root.tags.map((tag) => chip(tag))],
      ["Environment", root.environment],
      ["Release", root.release],
      ["Version", root.version],
    ]),
  ];
}

function described(row, full, scores, isFirst) {
  const own = scores.filter(({ subject }) => subject.id === row.id || (isFirst && subject.kind === "trace"));
  const isOurs = ([key]) => !/^(scope|resourceAttributes)\./.test(key);
  const metadata = Object.entries(full.metadata);
  const ours = Object.fromEntries(metadata.filter(isOurs));
  const theirs = Object.fromEntries(metadata.filter((entry) => !isOurs(entry)));
  const { id, traceId, startTime, endTime } = row;
  const prompt = row.promptName && h("a",
    { href: withQuery(path("prompts", row.promptName), { version: row.promptVersion }) },
    `${row.promptName}, version ${row.promptVersion}`);
  const part = (name, ...content) => h("section", {}, h("h3", {}, name), content);
  return [
    h("h2", {}, row.name || row.id, typeChip(row), levelChip(row)),
    row.statusMessage && h("p", { class: `status ${row.level}` }, row.statusMessage),
    facts([
      ["Took", lasted(spent(row))],
      ["First token", row.timeToFirstToken ? lasted(row.timeToFirstToken * 1000) : null],
      ["Model", row.model],
      ["Prompt", prompt],
    ]),
    part("Input", shown(full.input)),
    part("Output", shown(full.output)),
    own.length > 0 && part("Scores", scoreTable(own)),
    (row.totalUsage > 0 || isPriced(row)) && part("Usage and cost", usage(row)),
    Object.keys(row.modelParameters ?? {}).length > 0 && part("Model parameters", shown(row.modelParameters)),
    Object.keys(ours).length > 0 && part("Metadata", shown(ours)),
    h("details", {}, h("summary", {}, "Ids, times and where it came from"),
      shown({ id, traceId, startTime, endTime, ...theirs })),
  ];
}

/** Tokens and cost by bucket. A bucket may have no price of its own; a model without prices has no cost. */
function usage({ usageDetails, costDetails }) {
  const buckets = Object.keys({ ...usageDetails, ...costDetails }).filter((bucket) => bucket !== "total");
  const hasCost = Object.keys(costDetails).length > 0;
  const cost = (bucket) => (costDetails[bucket] === undefined ? null : usd(costDetails[bucket]));
  return table("Usage", [
    ["Bucket", (bucket) => bucket],
    ["Tokens", (bucket) => (usageDetails[bucket] === undefined ? null : whole(usageDetails[bucket])), "number"],
    ["Cost", (bucket) => (hasCost ? cost(bucket) : "unknown"), "number"],
  ], [...buckets, "total"], (bucket) => bucket);
}
