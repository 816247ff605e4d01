// The views beside the traces: conversations, people, numbers over time, prompts, experiments.

import {
  EVER, IS_CALL, IS_ROOT, all, among, chip, costs, facts, filled, get, go, h, keepFocus, lasted, link, live, metrics, ms,
  nothing, observations, pages, path, rounded, s, scoreTable, scoreText, show, shorter, shown, spent, sum, table, title,
  totals, unique, usd, when, where, whole,
} from "./base.js";

const main = document.getElementById("main");
const parsed = (text) => { try { return JSON.parse(text); } catch { return text; } };
const inOneLine = (value) => {
  const one = typeof value === "string" ? parsed(value) : value;
  return shorter(typeof one === "string" ? one : one?.content && typeof one.content === "string" ? one.content : JSON.stringify(one) ?? "");
};

// Sessions and users

/** The models of these rows' key that have a call of unknown price: a sum would hide them. */
async function unknownCosts(filters, key) {
  const { data, meta } = await observations([filled("model"), where("number", "totalCost", "=", 0), where("number", "totalTokens", ">", 0), ...filters],
    { limit: 1000, fields: "core,basic,model,usage" });
  const rows = data.filter((row) => !Object.keys(row.costDetails).length);
  return { rows, of: new Set(rows.map((row) => row[key])), isComplete: !meta.cursor };
}

export async function sessions(id) {
  if (id) return session(id);
  const cursor = new URLSearchParams(location.search).get("cursor");
  const filter = [IS_ROOT, filled("sessionId")];
  const draw = async () => {
    const { data, meta } = await observations(filter, { limit: 200, cursor, fields: "core,basic" });
    const turns = Map.groupBy(data, (row) => row.sessionId), ids = [...turns.keys()];
    if (!ids.length) return show(title("Sessions"), nothing("No sessions yet", "python 02_trace_llm_calls.py", "A session is a conversation: traces that carry the same session id. Lesson 2 stores one."));
    const order = (field) => ({ orderBy: [{ field, direction: "desc" }] }), inThese = among("sessionId", ...ids);
    const drawn_ = (of, turnsOf, unknown) => keepFocus(main, () => show(title("Sessions"), table("Sessions", [
      ["Session", (one) => h("a", { class: "row", href: path("sessions", one) }, one)], ["Last turn", (one) => when(turns.get(one)[0].startTime)],
      ["User", (one) => { const user = turns.get(one).find((row) => row.userId)?.userId; return user ? link(user, "users", user) : null; }],
      ["Turns", (one) => (turnsOf ? whole(turnsOf.get(one)?.count_count ?? 0) : "…"), "number"], ["Tokens", (one) => (of ? whole(of.get(one)?.sum_totalTokens ?? 0) : "…"), "number"],
      ["Cost", (one) => (of ? costs({ cost: of.get(one)?.sum_totalCost || (unknown.of.has(one) ? null : 0), unknown: unknown.of.has(one) }) : "…"), "number"],
    ], ids), meta.cursor ? h("p", { class: "more" }, h("a", { href: `${path("sessions")}?cursor=${encodeURIComponent(meta.cursor)}` }, "Older sessions →")) : null));
    if (!main.querySelector("table")) drawn_();
    const [sums, roots, unknown] = await Promise.all([metrics("observations", ["sum totalCost", "sum totalTokens"], ["sessionId"], [inThese], order("sum_totalCost")),
      metrics("observations", ["count count"], ["sessionId"], [inThese, IS_ROOT], order("count_count")), unknownCosts([inThese], "sessionId")]);
    drawn_(...[sums, roots].map((rows) => new Map(rows.map((row) => [row.sessionId, row]))), unknown);
  };
  await draw();
  if (!cursor) live(draw);
}

async function session(id) {
  let last = "";
  const draw = async () => {
    const mine = JSON.stringify([where("string", "sessionId", "=", id)]);
    const [rows, scores] = await Promise.all([all("v2/observations", { filter: mine, limit: 1000, fields: "core,basic,model,usage" }), all("v3/scores", { sessionId: id, limit: 100, fields: "details,subject" })]);
    const roots = await all("v2/observations", { filter: JSON.stringify([IS_ROOT, where("string", "sessionId", "=", id)]), limit: 1000, fields: "core,basic,io" });
    if (last === (last = JSON.stringify([rows, scores]))) return;
    const of = Map.groupBy(rows, (row) => row.traceId), users = unique(rows.map((row) => row.userId).filter(Boolean));
    const turn = (row) => h("li", {}, h("div", { class: "turn" }, h("a", { href: path("traces", row.traceId) }, row.name), when(row.startTime), h("span", {}, lasted(spent(row))), h("span", {}, costs(totals(of.get(row.traceId))))),
      h("div", { class: "message user" }, h("b", {}, "input"), shown(row.input)), h("div", { class: "message" }, h("b", {}, "output"), shown(row.output)));
    show(title(`Session ${id}`), facts([["Turns", whole(roots.length)], ["User", users.map((user) => link(user, "users", user))], ["Tokens", whole(totals(rows).tokens)], ["Cost", costs(totals(rows))],
      ["Traces", h("a", { href: `${path("traces")}?${new URLSearchParams({ session: id })}` }, "as a list")]]),
    scores.length ? h("section", {}, h("h2", {}, "Scores of the session"), scoreTable(scores)) : null, h("ol", { class: "turns" }, roots.sort((a, b) => ms(a.startTime) - ms(b.startTime)).map(turn)));
  };
  await draw();
  live(draw);
}

export async function users(id) {
  const only = id ? [where("string", "userId", "=", id)] : [];
  const top = (names, filters = []) => metrics("observations", names, ["userId"], [...only, ...filters], { orderBy: [{ field: names[0].replace(" ", "_"), direction: "desc" }] });
  const known = (await top(["sum totalCost", "sum totalTokens"])).filter((row) => row.userId), named = known.slice(0, 200);
  if (!known.length) return show(title("Users"), nothing("No users yet", "python 02_trace_llm_calls.py", "A user is whom a trace was made for: its user id. Lesson 2 stores one."));
  let calls, roots, unknown;
  const cost = (row) => (unknown ? costs({ cost: row.sum_totalCost || (unknown.of.has(row.userId) ? null : 0), unknown: unknown.of.has(row.userId) }) : "…");
  const count = (of, row) => (of ? whole(of.get(row.userId) ?? 0) : "…");
  const draw = () => show(title("Users"), table("Users, the costliest first", [["User", (row) => h("a", { class: "row", href: path("users", row.userId) }, row.userId)], ["Cost", cost, "number"],
    ["Tokens", (row) => whole(row.sum_totalTokens), "number"], ["Model calls", (row) => count(calls, row), "number"], ["Traces", (row) => count(roots, row), "number"]], named),
  named.length < known.length ? h("p", { class: "more" }, `The ${named.length} costliest are shown.`) : null);
  if (!id) draw();
  const counted = async (filters) => new Map((await top(["count count"], filters)).map((row) => [row.userId, row.count_count]));
  [calls, roots, unknown] = await Promise.all([counted([IS_CALL]), counted([IS_ROOT]), unknownCosts(only, "userId")]);
  if (id) {
    const { data } = await observations([IS_ROOT, ...only], { limit: 50, fields: "core,basic" });
    return show(title(`User ${id}`), facts([["Cost", cost(known[0])], ["Tokens", whole(known[0].sum_totalTokens)], ["Model calls", count(calls, known[0])], ["Traces", count(roots, known[0])],
      ["Sessions", unique(data.map((row) => row.sessionId).filter(Boolean)).map((one) => link(one, "sessions", one))]]),
    h("p", {}, h("a", { href: `${path("traces")}?${new URLSearchParams({ user: id })}` }, "All traces of this user")), table("Newest traces", [["Time", (row) => when(row.startTime)],
      ["Name", (row) => h("a", { class: "row", href: path("traces", row.traceId) }, row.name)], ["Latency", (row) => lasted(spent(row)), "number"], ["Session", (row) => link(row.sessionId, "sessions", row.sessionId)]], data));
  }
  draw();
}

// Charts: a figure with an SVG, the values under the pointer, and a table behind it

/** Draw series of one value a bucket; `kind` is bars (stacked), lines, or rows (one bar a series). */
function chart(name, note, buckets, series, format, kind = "bars") {
  const tip = h("div", { class: "tip", hidden: "" }), canvas = h("div", { class: "canvas" });
  const behind = h("details", {}, h("summary", {}, "Values as a table"), table(name, [["", (i) => buckets[i]], ...series.map((one) => [one.name, (i) => (one.values[i] === null ? null : format(one.values[i])), "number"])],
    buckets.map((_, i) => i).filter((i) => series.some((one) => one.values[i]))));
  if (kind === "bars" && series.length > 6) {
    const rest = series.slice(5);
    series = [...series.slice(0, 5), { name: `${rest.length} others`, values: buckets.map((_, i) => sum(rest, (one) => one.values[i] ?? 0)) }];
  }
  const figure = h("figure", { class: "chart", "aria-label": name }, h("figcaption", {}, h("h2", {}, name), h("p", {}, note)), canvas,
    kind === "rows" || !series.length ? null : h("ul", { class: "legend" }, series.map((one, i) => h("li", { class: `series-${i % 6}` }, one.name))), behind);
  const values = series.flatMap((one) => one.values).filter((value) => value !== null);
  if (!values.some((value) => value > 0) && kind !== "lines" || !values.length) {
    canvas.append(h("p", { class: "quiet none" }, "Nothing in this period."));
    behind.hidden = true;
    return figure;
  }
  const point = (event, i) => {
    const lines = series.filter((one) => one.values[i] !== null && (kind !== "bars" || one.values[i])).map((one) => h("div", {}, `${one.name}: `, h("b", {}, format(one.values[i]))));
    tip.replaceChildren(h("div", {}, buckets[i]), ...(lines.length ? lines : ["nothing"]));
    tip.hidden = false;
    const box = canvas.getBoundingClientRect(), x = event.clientX - box.left;
    Object.assign(tip.style, { top: `${event.clientY - box.top + 14}px`, left: `${Math.max(0, Math.min(x + 12, box.width - tip.offsetWidth))}px` });
  };
  const zone = (i, box) => s("rect", { ...box, class: "zone", onpointermove: (event) => point(event, i), onpointerleave: () => { tip.hidden = true; } });
  const draw = (width) => {
    const svg = (kind === "rows" ? drawnRows : drawn)(width, buckets, series, format, kind, zone);
    canvas.replaceChildren(svg, tip);
  };
  new ResizeObserver(([{ contentRect }]) => { if (contentRect.width) draw(contentRect.width); }).observe(canvas);
  return figure;
}

function nice(most) {
  const unit = 10 ** Math.floor(Math.log10(most || 1));
  return unit * [1, 1.5, 2, 3, 4, 5, 8, 10].find((n) => n * unit >= most * 0.999);
}

function drawn(width, buckets, series, format, kind, zone) {
  const height = 200, foot = 22, head = 8, n = buckets.length, at = (i, j) => series[i].values[j];
  const most = nice(Math.max(...buckets.map((_, j) => (kind === "bars" ? sum(series, (one) => one.values[j] ?? 0) : Math.max(0, ...series.map((one) => one.values[j] ?? 0))))));
  const ticks = [0, most / 2, most].map((value) => [value, format(value)]);
  const left = 12 + Math.max(...ticks.map(([, text]) => text.length)) * 6.6, step = (width - left - 4) / n;
  const x = (j) => left + (j + 0.5) * step, y = (value) => height - foot - (value / most) * (height - foot - head);
  const parts = ticks.map(([value, text]) => [s("line", { class: "grid", x1: left, x2: width, y1: y(value), y2: y(value) }), s("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, text)]);
  const labels = unique([0, Math.floor((n - 1) / 2), n - 1]).map((j) => s("text", { x: j === n - 1 && n > 1 ? width - 2 : j ? x(j) : Math.max(left, x(j) - step / 2), y: height - 4, "text-anchor": j === n - 1 && n > 1 ? "end" : j ? "middle" : "start" }, buckets[j]));
  const marks = series.map((one, i) => {
    const kindClass = `series-${i % 6}`;
    if (kind === "bars") return buckets.map((_, j) => at(i, j) && s("rect", { class: kindClass, rx: 1.5, x: x(j) - Math.min(step * 0.4, 22), width: Math.min(step * 0.8, 44),
      y: y(sum(series.slice(0, i + 1), (below) => below.values[j] ?? 0)), height: Math.max(y(0) - y(at(i, j)), 0.5) })).filter(Boolean);
    const points = buckets.map((_, j) => (at(i, j) === null ? null : [x(j), y(at(i, j))])).filter(Boolean);
    return [s("polyline", { class: kindClass, "stroke-dasharray": i > 5 ? "5 4" : null, points: points.map((point) => point.join()).join(" ") }), points.map(([cx, cy]) => s("circle", { class: kindClass, cx, cy, r: n > 40 ? 2 : 3 }))];
  });
  return s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, parts, labels, marks, buckets.map((_, j) => zone(j, { x: x(j) - step / 2, y: 0, width: step, height: height - foot })));
}

function drawnRows(width, buckets, series, format, _, zone) {
  const [{ values }] = series, most = Math.max(...values) || 1, row = 34, height = values.length * row;
  const bars = buckets.flatMap((name, i) => [s("text", { x: 0, y: i * row + 12 }, shorter(name, Math.floor(width / 11))), s("text", { x: width, y: i * row + 12, "text-anchor": "end" }, format(values[i])),
    s("rect", { class: "groove", x: 0, y: i * row + 18, width, height: 8, rx: 4 }), s("rect", { class: "series-0", x: 0, y: i * row + 18, width: Math.max((values[i] / most) * width, 2), height: 8, rx: 4 }),
    zone(i, { x: 0, y: i * row, width, height: row })]);
  return s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, bars);
}

// Dashboard

const PERIODS = { "1h": ["Last hour", 1, "minute"], "24h": ["Last 24 hours", 24, "hour"], "7d": ["Last 7 days", 168, "day"], "30d": ["Last 30 days", 720, "day"], "90d": ["Last 90 days", 2160, "day"] };

export async function dashboard() {
  const chosen = new URLSearchParams(location.search).get("period"), period = PERIODS[chosen] ? chosen : "24h", [, hours, granularity] = PERIODS[period];
  const to = new Date(), from = new Date(to - hours * 3_600_000), over = { fromTimestamp: from.toISOString(), toTimestamp: to.toISOString() };
  const byTime = { ...over, timeDimension: { granularity } };
  const at = (time) => (granularity === "day" ? new Date(`${time}T00:00:00Z`).toLocaleDateString("en-GB", { day: "numeric", month: "short", timeZone: "UTC" })
    : new Date(`${time.replace(" ", "T")}Z`).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" }));
  const pick = h("select", { "aria-label": "Period", onchange: () => go(`${path("dashboard")}?period=${pick.value}`) }, Object.entries(PERIODS).map(([key, [name]]) => h("option", { value: key, selected: key === period }, name)));
  const tiles = h("dl", { class: "tiles" }), grid = h("div", { class: "charts" }), notes = h("p", { class: "quiet" });
  show(title("Dashboard", pick), tiles, notes, grid);
  const tile = (name, value) => tiles.append(h("div", {}, h("dt", {}, name), h("dd", {}, value)));
  const places = ["cost", "calls", "tokens", "latency", "errors", "teams", "scores", "others"].map((key) => [key, grid.appendChild(h("div"))]);
  const place = (key, figure) => Object.fromEntries(places)[key].replaceWith(figure);
  /** Rows of a time and a name as series: [times, [{name, values}]]. */
  const asSeries = (rows, name, value, blank = 0) => {
    const times = unique(rows.map((row) => row.time_dimension)).sort(), names = unique(rows.map((row) => row[name]).filter(Boolean));
    const of = new Map(rows.map((row) => [`${row.time_dimension}\n${row[name]}`, row[value]]));
    const series = names.map((one) => ({ name: one, values: times.map((time) => of.get(`${time}\n${one}`) ?? blank) }));
    return [times.map(at), series.sort((a, b) => sum(b.values, (n) => n ?? 0) - sum(a.values, (n) => n ?? 0))];
  };
  const models = await metrics("observations", ["sum totalCost", "sum inputTokens", "sum outputTokens", "count count"], ["providedModelName"], [filled("providedModelName")], byTime);
  const total = (key) => sum(models, (row) => row[key] ?? 0), dollars = (n) => (n ? usd(n) : "$0");
  const [times, cost] = asSeries(models, "providedModelName", "sum_totalCost");
  place("calls", chart("Model calls", "by model", ...asSeries(models, "providedModelName", "count_count"), whole));
  const byHour = Map.groupBy(models, (row) => row.time_dimension), tokens = (key) => [...byHour.keys()].sort().map((time) => sum(byHour.get(time), (row) => row[key] ?? 0));
  place("tokens", chart("Tokens", "read and written by models", times, [{ name: "input", values: tokens("sum_inputTokens") }, { name: "output", values: tokens("sum_outputTokens") }], whole));
  const unpriced = await unknownCosts([where("datetime", "startTime", ">=", from.toISOString())], "model");
  const names = [...unpriced.of], isKnown = total("sum_totalCost") > 0 || !names.length;
  tile("Cost", costs({ cost: isKnown ? total("sum_totalCost") : null, unknown: names.length > 0 }));
  tile("Tokens", whole(total("sum_inputTokens") + total("sum_outputTokens")));
  tile("Model calls", whole(total("count_count")));
  const [any] = models.some((row) => row.count_count) ? [true] : (await observations([], { limit: 1, fields: "core" })).data;
  if (!any) return show(title("Dashboard"), nothing("Nothing is stored yet", "python 01_langfuse_setup.py", "The charts are drawn from what the lessons store. Lesson 4 stores a day of traffic."));
  if (names.length) notes.textContent = `The cost of ${unpriced.isComplete ? "" : "at least "}${whole(unpriced.rows.length)} ${unpriced.rows.length === 1 ? "call" : "calls"} of ${names.join(", ")} is unknown: no sum here contains them.`;
  const ofModel = (one) => names.includes(one.name) && !one.values.some(Boolean) ? { ...one, name: `${one.name} (cost unknown)` } : one;
  place("cost", chart("Cost by model", "US dollars", times, cost.map(ofModel).filter((one) => one.values.some(Boolean) || / \(/.test(one.name)), dollars));
  const isGeneration = [among("type", "GENERATION")], P = ["p50", "p95", "p99"];
  const [[overall], latency, levels, teams, scores, [traced]] = await Promise.all([
    metrics("observations", ["p95 latency"], [], isGeneration, over), metrics("observations", P.map((p) => `${p} latency`), [], isGeneration, byTime),
    metrics("observations", ["count count"], ["level"], [IS_CALL], byTime), metrics("observations", ["sum totalCost"], ["tags"], [], over),
    metrics("scores-numeric", ["avg value"], ["name"], [], byTime), metrics("observations", ["count count"], [], [IS_ROOT], over)]);
  place("latency", chart("Latency of model calls", "half, 95 % and 99 % were faster", latency.map((row) => at(row.time_dimension)), P.map((p) => ({ name: p, values: latency.map((row) => row[`${p}_latency`]) })), lasted, "lines"));
  const [hoursOf, counts] = asSeries(levels, "level", "count_count"), failed = counts.find((one) => one.name === "ERROR")?.values;
  const callsAt = hoursOf.map((_, i) => sum(counts, (one) => one.values[i]));
  const rate = [{ name: "error rate", values: callsAt.map((n, i) => (n ? (failed?.[i] ?? 0) / n : null)) }], percent = (n) => `${rounded(n * 100)} %`;
  place("errors", chart("Error rate", "of model calls", hoursOf, callsAt.some(Boolean) ? rate : [], percent, "lines"));
  const ofTag = new Map();
  for (const row of teams) for (const tag of row.tags) ofTag.set(tag, (ofTag.get(tag) ?? 0) + row.sum_totalCost);
  const isTeam = [...ofTag.keys()].some((tag) => tag.startsWith("team:")), tags = [...ofTag].filter(([tag]) => !isTeam || tag.startsWith("team:")).sort((a, b) => b[1] - a[1]).slice(0, 12);
  place("teams", chart(isTeam ? "Cost by team" : "Cost by tag", "US dollars", tags.map(([tag]) => tag), [{ name: "cost", values: tags.map(([, value]) => value) }], dollars, "rows"));
  const [scoreTimes, averages] = asSeries(scores, "name", "avg_value", null), isShare = (one) => one.values.every((value) => value === null || Math.abs(value) <= 1);
  place("scores", chart("Scores from 0 to 1", "average", scoreTimes, averages.filter(isShare), rounded, "lines"));
  place("others", averages.every(isShare) ? "" : chart("Other scores", "average", scoreTimes, averages.filter((one) => !isShare(one)), rounded, "lines"));
  tile("Traces", whole(traced?.count_count ?? 0));
  tile("p95 latency", lasted(overall?.p95_latency) ?? "–");
  tile("Error rate", callsAt.some(Boolean) ? percent(sum(failed ?? [], Number) / sum(callsAt, Number)) : "–");
}

// Prompts

const asText = (prompt) => (typeof prompt === "string" ? prompt : prompt.map((part) => (part.role ? `${part.role}:\n${part.content}` : `[${part.name}]`)).join("\n\n"));

/** The lines of two texts as [" ", "-" or "+", line], by their longest common subsequence. */
function difference(before, after) {
  const [a, b] = [before.split("\n"), after.split("\n")], longest = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) for (let j = b.length - 1; j >= 0; j--) longest[i][j] = a[i] === b[j] ? longest[i + 1][j + 1] + 1 : Math.max(longest[i + 1][j], longest[i][j + 1]);
  const lines = [];
  for (let i = 0, j = 0; i < a.length || j < b.length;) {
    if (i < a.length && j < b.length && a[i] === b[j]) lines.push([" ", a[i++]]) && j++;
    else if (j >= b.length || (i < a.length && longest[i + 1][j] >= longest[i][j + 1])) lines.push(["-", a[i++]]);
    else lines.push(["+", b[j++]]);
  }
  return lines;
}

export async function prompts(name) {
  const list = await pages("v2/prompts", name ? { name } : {});
  const labels = (row) => row.labels.map((label) => chip(label, label === "production" ? "accent" : ""));
  if (!name) {
    if (!list.length) return show(title("Prompts"), nothing("No prompts yet", "python 03_trace_rag_pipeline.py", "A managed prompt has versions, and labels that say which one is used. Lesson 3 creates one."));
    return show(title("Prompts"), table("Prompts", [["Prompt", (row) => h("a", { class: "row", href: path("prompts", row.name) }, row.name)], ["Type", (row) => row.type], ["Versions", (row) => row.versions.length, "number"],
      ["Labels", labels, "tags"], ["Tags", (row) => row.tags.map((tag) => chip(tag)), "tags"], ["Changed", (row) => when(row.lastUpdatedAt)]], list));
  }
  if (!list.length) return show(title("No such prompt"), h("p", {}, "There is no prompt ", h("code", {}, name), "."));
  const numbers = list[0].versions.toSorted((a, b) => b - a), query = new URLSearchParams(location.search);
  const number = numbers.includes(Number(query.get("version"))) ? Number(query.get("version")) : numbers[0];
  const against = numbers.find((n) => n === Number(query.get("against"))) ?? numbers.find((n) => n < number);
  const read = (version) => get(`v2/prompts/${encodeURIComponent(name)}`, { version });
  const versions = await Promise.all(numbers.slice(0, 100).map(read)), [one, other] = [number, against].map((n) => versions.find((version) => version.version === n));
  const choose = (version, than) => `${path("prompts", name)}?${new URLSearchParams(than ? { version, against: than } : { version })}`;
  const pick = h("select", { "aria-label": "Compare with", onchange: () => go(choose(number, pick.value)) }, numbers.filter((n) => n !== number).map((n) => h("option", { value: n, selected: n === against }, `version ${n}`)));
  show(title(name, chip(one.type)), h("div", { class: "sides" },
    h("nav", { class: "versions", "aria-label": "Versions" }, versions.map((version) => h("a", { href: choose(version.version), "aria-current": version.version === number ? "true" : null },
      h("b", {}, `Version ${version.version}`), labels(version), when(version.createdAt), version.commitMessage))),
    h("section", {}, h("h2", {}, `Version ${number}`), typeof one.prompt === "string" ? h("pre", {}, one.prompt) : shown(one.prompt), Object.keys(one.config ?? {}).length ? [h("h3", {}, "Config"), shown(one.config)] : null,
      other ? [h("h2", {}, "Changed from ", pick), h("pre", { class: "difference" }, difference(asText(other.prompt), asText(one.prompt)).map(([sign, line]) =>
        h(sign === "+" ? "ins" : sign === "-" ? "del" : "span", {}, `${sign} ${line}\n`)))] : null)));
}

// Datasets and experiments

const experimentRows = (query = {}) => all("experiments", { fromStartTime: EVER.fromTimestamp, limit: 100, fields: "core,scores", ...query });
const scoreChips = (scores, baseline = []) => scores.map((score) => {
  const before = baseline.find((one) => one.name === score.name), change = before && typeof score.value === "number" ? score.value - before.value : 0;
  return chip(`${score.name} ${scoreText(score)}${change ? (change > 0 ? " ▲" : " ▼") : ""}`, change > 0 ? "better" : change < 0 ? "worse" : "");
});
const EXPERIMENTS = [["Experiment", (one) => h("a", { class: "row", href: `${path("experiments", "results")}?baseline=${encodeURIComponent(one.id)}` }, one.name || one.id)], ["Started", (one) => when(one.startTime)],
  ["Items", (one) => one.itemCount, "number"], ["Scores", (one) => scoreChips(one.scores), "tags"]];

export async function datasets(name) {
  const list = await pages("v2/datasets", {}), runs = await experimentRows();
  const chosen = list.find((one) => one.name === name || one.id === name);
  if (chosen) return compared(chosen, runs.filter((run) => run.datasetId === chosen.id));
  if (!list.length && !runs.length) return show(title("Datasets"), nothing("No datasets yet", "python 05_custom_metrics.py", "A dataset holds inputs with the outputs you expect; an experiment runs your program on each. Lesson 5 does both."));
  show(title("Datasets and experiments"), name ? h("p", {}, "There is no dataset ", h("code", {}, name), ".") : null,
    table("Datasets", [["Dataset", (one) => h("a", { class: "row", href: path("datasets", one.name) }, one.name)], ["Description", (one) => one.description], ["Experiments", (one) => runs.filter((run) => run.datasetId === one.id).length, "number"],
      ["Changed", (one) => when(one.updatedAt)]], list), h("h2", {}, "Experiments"), table("Experiments", EXPERIMENTS, runs));
}

export async function experiments() {
  const baseline = new URLSearchParams(location.search).get("baseline");
  const [run] = baseline ? await experimentRows({ id: baseline }) : [];
  if (!run) return datasets();
  const dataset = (await pages("v2/datasets", {})).find((one) => one.id === run.datasetId);
  return compared(dataset ?? { name: run.name }, dataset ? await experimentRows({ datasetId: dataset.id }) : [run], run.id);
}

async function compared(dataset, runs, baseline) {
  const asked = new URLSearchParams(location.search).get("compare")?.split(","), first = baseline ?? runs.at(-1)?.id;
  const shownIds = asked ?? unique([first, ...runs.slice(0, 2).map((run) => run.id)]);
  const picked = runs.filter((run) => shownIds.includes(run.id)).toSorted((a, b) => (b.id === first) - (a.id === first) || ms(a.startTime) - ms(b.startTime));
  const [items, results] = await Promise.all([dataset.id ? pages("dataset-items", { datasetName: dataset.name }) : [],
    Promise.all(picked.map((run) => all("experiment-items", { fromStartTime: EVER.fromTimestamp, experimentId: run.id, limit: 100, fields: "core,io,scores" })))]);
  const of = results.map((rows) => new Map(rows.map((row) => [row.experimentItemId, row])));
  const known = new Map(items.map((item) => [item.id, { id: item.id, input: item.input, expected: item.expectedOutput }]));
  for (const row of results.flat()) if (!known.has(row.experimentItemId)) known.set(row.experimentItemId, { id: row.experimentItemId, input: row.input, expected: row.expectedOutput });
  const boxes = runs.map((run) => h("label", {}, h("input", { type: "checkbox", value: run.id, checked: shownIds.includes(run.id) }), run.name || run.id));
  const form = h("form", { class: "picks", "aria-label": "Experiments to compare", onchange: () => go(`${location.pathname}?${new URLSearchParams({ ...(baseline ? { baseline } : {}), compare: [...form.querySelectorAll(":checked")].map((box) => box.value).join() })}`) }, boxes);
  const result = (i) => ({ id }) => {
    const row = of[i].get(id);
    return row && [h("a", { href: `${path("traces", row.traceId)}?observation=${row.id}` }, inOneLine(row.output) || "no output"), h("div", { class: "tags" }, row.level === "ERROR" ? chip("ERROR", "ERROR") : null, scoreChips(row.scores, i ? of[0].get(id)?.scores : []))];
  };
  show(title(dataset.name, dataset.id ? link("All datasets", "datasets") : null), dataset.description ? h("p", {}, dataset.description) : null,
    runs.length ? [h("h2", {}, "Experiments"), table("Experiments", [...EXPERIMENTS.slice(0, 3), ["Scores", (run) => scoreChips(run.scores, run.id === first ? [] : runs.find((one) => one.id === first)?.scores), "tags"]], runs), runs.length > 1 ? form : null] : null,
    h("h2", {}, "Item by item"), known.size ? table("Items", [["Input", (item) => inOneLine(item.input)], ["Expected", (item) => (item.expected === null ? null : inOneLine(item.expected)), "wide"], ...picked.map((run, i) => [run.name || run.id, result(i), "wide"])], [...known.values()].toSorted((a, b) => (a.id < b.id ? -1 : 1)))
      : h("p", { class: "quiet" }, "This dataset has no items yet."));
}
