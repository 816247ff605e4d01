// Conversations and people: sessions, one session, users, one user.

import {
  IS_CALL, IS_ROOT, MOST, NO_COST, all, allObservations, among, countStored, inParts, is, isFilled, metrics,
  observations, summed, unpricedCalls, where,
} from "./api.js";
import {
  costs, facts, follow, h, isPriced, lasted, link, ms, nothing, path, rowLink, scoreTable, show, shown, spent, table,
  title, totals, unique, when, whole, withQuery,
} from "./base.js";

const ROOTS = 200; // turns read for a page of sessions
const SHOWN = 200; // users

const indexed = (rows, key) => new Map(rows.map((row) => [row[key], row]));
const countText = (counts, key) => (counts ? whole(counts.get(key)?.count_count ?? 0) : "…");

// Sessions

export async function sessions(id) {
  if (id) return session(id);
  const cursor = new URLSearchParams(location.search).get("cursor");
  let isDrawn = false;
  const draw = async () => {
    const { data, meta } = await observations([IS_ROOT, isFilled("sessionId")],
      { limit: ROOTS, cursor, fields: "core,basic" });
    const turns = Map.groupBy(data, (row) => row.sessionId);
    const read = (ask) => inParts([...turns.keys()], (ids) => ask([among("sessionId", ids)]));
    const count = (filters) => read((these) => metrics("observations", ["count count"],
      { by: ["sessionId"], filters: [...filters, ...these], top: "count count" }));
    if (cursor && data.length) { // a session is listed at its last turn, which may be on an earlier page
      const newer = where("datetime", "startTime", ">", data[0].startTime);
      for (const { sessionId } of await count([IS_ROOT, newer])) turns.delete(sessionId);
    }
    if (!data.length) {
      return show(title("Sessions"), nothing("No sessions yet", "python 02_trace_llm_calls.py",
        "A session is a conversation: traces with the same session id. Lesson 2 stores one."));
    }
    const known = { turns, next: meta.cursor };
    if (!isDrawn) show(...sessionList(known));
    isDrawn = true;
    const [sums, counts, unpriced] = await Promise.all([
      read((these) => metrics("observations", ["sum totalCost", "sum totalTokens"],
        { by: ["sessionId"], filters: these, top: "sum totalCost" })),
      count([IS_ROOT]),
      read((these) => allObservations([...NO_COST, ...these], "core,basic,usage")),
    ]);
    show(...sessionList({
      ...known, sums: indexed(sums, "sessionId"), counts: indexed(counts, "sessionId"),
      unknown: new Set(unpriced.filter((row) => !isPriced(row)).map((row) => row.sessionId)),
    }));
  };
  if (cursor) await draw();
  else await follow(countStored, draw);
}

function sessionList({ turns, next, sums, counts, unknown }) {
  const spending = (id) => summed(sums.get(id), { unknown: unknown.has(id) });
  const older = next && h("a", { href: withQuery(path("sessions"), { cursor: next }) }, "Older sessions →");
  const userOf = (id) => turns.get(id).find((row) => row.userId)?.userId;
  return [
    title("Sessions"),
    table("Sessions", [
      ["Session", (id) => rowLink(id, "sessions", id), "first"],
      ["Last turn", (id) => when(turns.get(id)[0].startTime), "time"],
      ["User", (id) => link(userOf(id), "users", userOf(id))],
      ["Turns", (id) => countText(counts, id), "number"],
      ["Tokens", (id) => (sums ? whole(spending(id).tokens) : "…"), "number"],
      ["Cost", (id) => (sums ? costs(spending(id)) : "…"), "number"],
    ], [...turns.keys()], (id) => id),
    h("p", { class: "more" }, h("span", {}, `${turns.size} shown`), older),
  ];
}

async function session(id) {
  const mine = [is("sessionId", id)];
  const ask = () => Promise.all([
    allObservations(mine, "core,basic,model,usage"),
    all("v3/scores", { sessionId: id, limit: 100, fields: "details,subject" }),
  ]);
  await follow(ask, async ([rows, scores]) => {
    const roots = await allObservations([IS_ROOT, ...mine], "core,basic,io");
    const parts = Map.groupBy(rows, (row) => row.traceId);
    const users = unique(rows.map((row) => row.userId).filter(Boolean));
    const total = totals(rows);
    show(
      title(`Session ${id}`),
      facts([
        ["Turns", whole(roots.length)],
        ["User", users.map((user) => link(user, "users", user))],
        ["Tokens", whole(total.tokens)],
        ["Cost", costs(total)],
        ["Traces", h("a", { href: withQuery(path("traces"), { session: id }) }, "as a list")],
      ]),
      scores.length > 0 && h("section", {}, h("h2", {}, "Scores of the session"), scoreTable(scores)),
      h("ol", { class: "turns" }, roots.toSorted((a, b) => ms(a.startTime) - ms(b.startTime))
        .map((root) => turn(root, totals(parts.get(root.traceId) ?? [])))));
  });
}

const turn = (root, total) => h("li", { "data-key": root.id },
  h("div", { class: "turn" },
    h("a", { href: path("traces", root.traceId) }, root.name || root.traceId), when(root.startTime),
    h("span", {}, lasted(spent(root))), h("span", {}, costs(total))),
  h("div", { class: "message user" }, h("b", {}, "input"), shown(root.input)),
  h("div", { class: "message" }, h("b", {}, "output"), shown(root.output)));

// Users

export async function users(id) {
  if (id) return user(id);
  let isDrawn = false;
  await follow(countStored, async () => {
    const rows = await metrics("observations", ["sum totalCost", "sum totalTokens"],
      { by: ["userId"], top: "sum totalCost" });
    const costliest = rows.filter((row) => row.userId).slice(0, SHOWN);
    if (!costliest.length) {
      return show(title("Users"), nothing("No users yet", "python 02_trace_llm_calls.py",
        "A user is the person that a trace is about, named by its user id. Lesson 2 stores one."));
    }
    const known = { rows: costliest, note: usersNote(rows, costliest) };
    if (!isDrawn) show(...userList(known));
    isDrawn = true;
    show(...userList({ ...known, ...await callsAndTraces(costliest.map((row) => row.userId)) }));
  });
}

/** What the list leaves out, and why. */
function usersNote(rows, costliest) {
  const others = "To see any other, filter the traces by user.";
  if (rows.length === MOST) {
    return `The ${costliest.length} costliest are shown. There are more than the ${whole(MOST)} that the Metrics API `
      + `returns in one answer. ${others}`;
  }
  const count = rows.filter((row) => row.userId).length;
  return count > costliest.length ? `The ${costliest.length} costliest of ${count} users are shown. ${others}` : null;
}

/** Model calls and traces of these users, and which of the users have calls of unknown cost. */
async function callsAndTraces(ids) {
  const read = (ask) => inParts(ids, (part) => ask([among("userId", part)]));
  const count = (filter) => read((these) => metrics("observations", ["count count"],
    { by: ["userId"], filters: [filter, ...these], top: "count count" }));
  const [calls, roots, unpriced] = await Promise.all([
    count(IS_CALL), count(IS_ROOT), read(async (these) => [await unpricedCalls(these)]),
  ]);
  return {
    calls: indexed(calls, "userId"),
    roots: indexed(roots, "userId"),
    unknown: new Set(unpriced.flatMap(({ rows }) => rows).map((row) => row.userId)),
    isAll: unpriced.every((one) => one.isAll),
  };
}

function userList({ rows, note, calls, roots, unknown, isAll = true }) {
  return [
    title("Users"),
    table("Users, the costliest first", [
      ["User", (row) => rowLink(row.userId, "users", row.userId), "first"],
      ["Cost", (row) => (unknown ? costs(summed(row, { unknown: unknown.has(row.userId) })) : "…"), "number"],
      ["Tokens", (row) => whole(row.sum_totalTokens), "number"],
      ["Model calls", (row) => countText(calls, row.userId), "number"],
      ["Traces", (row) => countText(roots, row.userId), "number"],
    ], rows, (row) => row.userId),
    note && h("p", { class: "quiet" }, note),
    !isAll && h("p", { class: "quiet" }, `Only the newest ${whole(MOST)} calls without a cost were checked: `
      + "older ones of unknown cost are not marked."),
  ];
}

async function user(id) {
  const mine = [is("userId", id)];
  await follow(countStored, async () => {
    const [{ data }, [sums], { calls, roots, unknown }] = await Promise.all([
      observations([IS_ROOT, ...mine], { limit: 50, fields: "core,basic" }),
      metrics("observations", ["sum totalCost", "sum totalTokens"],
        { by: ["userId"], filters: mine, top: "sum totalCost" }),
      callsAndTraces([id]),
    ]);
    if (!sums) {
      return show(title("No such user"), h("p", {}, "Nothing is stored for ", h("code", {}, id), "."));
    }
    const total = summed(sums, { unknown: unknown.has(id) });
    const talks = unique(data.map((row) => row.sessionId).filter(Boolean));
    show(
      title(`User ${id}`),
      facts([
        ["Cost", costs(total)],
        ["Tokens", whole(total.tokens)],
        ["Model calls", countText(calls, id)],
        ["Traces", countText(roots, id)],
        ["Latest sessions", talks.map((one) => link(one, "sessions", one))],
      ]),
      h("p", {}, h("a", { href: withQuery(path("traces"), { user: id }) }, "All traces of this user")),
      table("Newest traces", [
        ["Time", (row) => when(row.startTime), "time"],
        ["Name", (row) => rowLink(row.name || row.traceId, "traces", row.traceId), "first"],
        ["Latency", (row) => lasted(spent(row)), "number"],
        ["Session", (row) => link(row.sessionId, "sessions", row.sessionId)],
      ], data, (row) => row.id));
  });
}
