// What is stored besides traces: prompts with their versions, datasets, and experiments side by side.

import { EVER, all, countAll, get, pages } from "./api.js";
import {
  chip, follow, go, h, link, ms, nothing, parsed, path, rowLink, scoreText, shorter, show, shown, table, title, unique,
  when, withQuery,
} from "./base.js";

// Prompts

const VERSIONS = 50; // listed next to the open one
const DIFFERENCE_CELLS = 4_000_000;

const labels = (row) => row.labels.map((label) => chip(label, label === "production" ? "accent" : ""));

export async function prompts(name) {
  if (name) return prompt(name);
  await follow(() => pages("v2/prompts"), (list) => {
    if (!list.length) {
      return show(title("Prompts"), nothing("No prompts yet", "python 03_trace_rag_pipeline.py",
        "A managed prompt has versions, and labels that say which one is used. Lesson 3 creates one."));
    }
    show(title("Prompts"), table("Prompts", [
      ["Prompt", (row) => rowLink(row.name, "prompts", row.name), "first"],
      ["Type", (row) => row.type],
      ["Versions", (row) => row.versions.length, "number"],
      ["Labels", labels, "tags"],
      ["Tags", (row) => (row.tags.length ? row.tags.map((tag) => chip(tag)) : null), "tags"],
      ["Changed", (row) => when(row.lastUpdatedAt), "time"],
    ], list, (row) => row.name));
  });
}

async function prompt(name) {
  await follow(() => pages("v2/prompts", { name }), async ([row]) => {
    if (!row) return show(title("No such prompt"), h("p", {}, "There is no prompt ", h("code", {}, name), "."));
    const query = new URLSearchParams(location.search);
    const numbers = row.versions.toSorted((a, b) => b - a);
    const asked = (key) => numbers.find((number) => number === Number(query.get(key)));
    const number = asked("version") ?? numbers[0];
    const against = asked("against") ?? numbers.find((one) => one < number);
    const listed = unique([...numbers.slice(0, VERSIONS), number, against ?? number]);
    const versions = await Promise.all(listed.map((version) =>
      get(`v2/prompts/${encodeURIComponent(name)}`, { version })));
    const [one, other] = [number, against].map((wanted) => versions.find(({ version }) => version === wanted));
    show(title(name, chip(row.type)), h("div", { class: "sides" },
      h("nav", { class: "versions", "aria-label": "Versions" },
        versions.map((version) => versionLink(version, number))),
      h("section", {}, versionText(one), other && changes(one, other, numbers))));
  });
}

function versionLink({ name, version, createdAt, commitMessage, ...row }, number) {
  const href = withQuery(path("prompts", name), { version });
  return h("a", { href, "data-key": version, "aria-current": version === number ? "true" : null },
    h("b", {}, `Version ${version}`), labels(row), when(createdAt), commitMessage && h("span", {}, commitMessage));
}

const versionText = ({ version, prompt: text, config }) => [
  h("h2", {}, `Version ${version}`),
  typeof text === "string" ? h("pre", {}, text) : shown(text),
  Object.keys(config ?? {}).length > 0 && [h("h3", {}, "Config"), shown(config)],
];

function changes(one, other, numbers) {
  const onchange = (event) => go(withQuery(path("prompts", one.name),
    { version: one.version, against: event.currentTarget.value }));
  const options = numbers.filter((number) => number !== one.version).map((number) =>
    h("option", { value: number, selected: number === other.version }, `version ${number}`));
  const elements = { "+": "ins", "-": "del", " ": "span" };
  const lines = difference(asText(other.prompt).split("\n"), asText(one.prompt).split("\n"));
  return [
    h("h2", {}, "Changed from ", h("select", { "aria-label": "Compare with", onchange }, options)),
    h("pre", { class: "difference" }, lines.map(([sign, line]) => h(elements[sign], {}, `${sign} ${line}\n`))),
  ];
}

function asText(text) {
  if (typeof text === "string") return text;
  return text.map((part) => (part.role ? `${part.role}:\n${part.content}` : `[${part.name}]`)).join("\n\n");
}

/** The lines of two texts as [" ", "-" or "+", line], by their longest common subsequence. */
function difference(before, after) {
  if (before.length * after.length > DIFFERENCE_CELLS) { // too long to compare here
    return [...before.map((line) => ["-", line]), ...after.map((line) => ["+", line])];
  }
  const common = Array.from({ length: before.length + 1 }, () => new Uint16Array(after.length + 1));
  for (let i = before.length - 1; i >= 0; i--) {
    for (let j = after.length - 1; j >= 0; j--) {
      common[i][j] = before[i] === after[j] ? common[i + 1][j + 1] + 1 : Math.max(common[i + 1][j], common[i][j + 1]);
    }
  }
  const lines = [];
  let i = 0;
  let j = 0;
  while (i < before.length || j < after.length) {
    const isSame = i < before.length && j < after.length && before[i] === after[j];
    const isGone = j >= after.length || (i < before.length && common[i + 1][j] >= common[i][j + 1]);
    if (isSame) lines.push([" ", before[i]]);
    else if (isGone) lines.push(["-", before[i]]);
    else lines.push(["+", after[j]]);
    if (isSame || isGone) i++;
    if (isSame || !isGone) j++;
  }
  return lines;
}

// Datasets and experiments

const readExperiments = (query = {}) =>
  all("experiments", { fromStartTime: EVER.fromTimestamp, limit: 100, fields: "core,scores", ...query });
const nameOf = (run) => run.name || run.id;

const comparison = (run) => withQuery(path("experiments", "results"), { baseline: run.id });

const experimentTable = (runs, baseline) => table("Experiments", [
  ["Experiment", (run) => h("a", { class: "row", href: comparison(run) }, nameOf(run)), "first"],
  ["Started", (run) => when(run.startTime), "time"],
  ["Items", (run) => run.itemCount, "number"],
  ["Scores", (run) => scoreChips(run.scores, run === baseline ? [] : baseline?.scores), "tags"],
], runs, (run) => run.id);

/** Scores, each marked as above or below the baseline's score of the same name. */
function scoreChips(scores, baseline = []) {
  return scores.map((score) => {
    const before = baseline.find((one) => one.name === score.name)?.value;
    const change = typeof before === "number" && typeof score.value === "number" ? score.value - before : 0;
    const [kind, arrow] = change > 0 ? ["better", " ▲"] : change < 0 ? ["worse", " ▼"] : ["", ""];
    return chip(`${score.name} ${scoreText(score)}${arrow}`, kind);
  });
}

/** What to ask again and again: are there new spans or scores, did a dataset or its items change? */
const ask = async (datasetName) => [
  await countAll(),
  await pages("v2/datasets"),
  datasetName && (await get("dataset-items", { datasetName, limit: 1 })),
];

export async function datasets(name) {
  const isNamed = (one) => one.name === name || one.id === name;
  const chosen = name && (await pages("v2/datasets")).find(isNamed);
  await follow(() => ask(chosen?.name), async ([, list]) => {
    const runs = await readExperiments();
    const dataset = list.find(isNamed);
    if (dataset) return compared(dataset, runs.filter((run) => run.datasetId === dataset.id));
    if (!list.length && !runs.length) {
      return show(title("Datasets"), nothing("No datasets yet", "python 05_custom_metrics.py",
        "A dataset holds inputs with the outputs you expect; an experiment runs your program on each. "
          + "Lesson 5 does both."));
    }
    show(
      title("Datasets and experiments"),
      name && h("p", {}, "There is no dataset ", h("code", {}, name), "."),
      table("Datasets", [
        ["Dataset", (one) => rowLink(one.name, "datasets", one.name), "first"],
        ["Description", (one) => one.description],
        ["Experiments", (one) => runs.filter((run) => run.datasetId === one.id).length, "number"],
        ["Changed", (one) => when(one.updatedAt), "time"],
      ], list, (one) => one.id),
      h("h2", {}, "Experiments"), experimentTable(runs));
  });
}

/** The address that the SDK prints: `experiments/results?baseline=…`. */
export async function experiments() {
  const baseline = new URLSearchParams(location.search).get("baseline");
  const [run] = baseline ? await readExperiments({ id: baseline }) : [];
  if (!run) return datasets();
  const isOfRun = (one) => one.id === run.datasetId;
  const ofRun = (await pages("v2/datasets")).find(isOfRun);
  await follow(() => ask(ofRun?.name), async ([, list]) => {
    const dataset = list.find(isOfRun);
    const runs = await readExperiments(dataset ? { datasetId: dataset.id } : { id: run.id });
    await compared(dataset ?? { name: nameOf(run) }, runs, run.id);
  });
}

/** A dataset and its experiments, item by item: the baseline first, then how the others compare with it. */
async function compared(dataset, runs, asked) {
  const first = runs.find((run) => run.id === asked) ?? runs.at(-1);
  const query = new URLSearchParams(location.search).get("compare");
  const wanted = query === null ? [first, ...runs.slice(0, 2)].map((run) => run?.id) : query.split(",");
  const chosen = runs.filter((run) => wanted.includes(run.id))
    .toSorted((a, b) => (b === first) - (a === first) || ms(a.startTime) - ms(b.startTime));
  const [items, ...results] = await Promise.all([
    dataset.id ? pages("dataset-items", { datasetName: dataset.name }) : [],
    ...chosen.map((run) => all("experiment-items",
      { fromStartTime: EVER.fromTimestamp, experimentId: run.id, limit: 100, fields: "core,io,scores" })),
  ]);
  const known = new Map(items.toReversed().map((item) =>
    [item.id, { id: item.id, input: item.input, expected: item.expectedOutput }]));
  for (const { experimentItemId: id, input, expectedOutput: expected } of results.flat()) {
    if (!known.has(id)) known.set(id, { id, input, expected });
  }
  const byItem = results.map((rows) => new Map(rows.map((row) => [row.experimentItemId, row])));
  const columns = chosen.map((run, i) => [nameOf(run), (item) => {
    const row = byItem[i].get(item.id);
    return row && result(row, i ? byItem[0].get(item.id)?.scores : []);
  }, "wide"]);
  show(
    title(dataset.name, dataset.id && link("All datasets", "datasets")),
    dataset.description && h("p", {}, dataset.description),
    runs.length > 0 && [h("h2", {}, "Experiments"), experimentTable(runs, first), picker(runs, wanted, asked)],
    h("h2", {}, "Item by item"),
    known.size ? table("Items", [
      ["Input", (item) => inOneLine(item.input), "first"],
      ["Expected", (item) => (item.expected === null ? null : inOneLine(item.expected)), "expected"],
      ...columns,
    ], [...known.values()], (item) => item.id) : h("p", { class: "quiet" }, "This dataset has no items yet."));
}

function picker(runs, wanted, baseline) {
  if (runs.length < 2) return null;
  const boxes = runs.map((run) => h("label", {},
    h("input", { type: "checkbox", value: run.id, checked: wanted.includes(run.id) }), nameOf(run)));
  const onchange = (event) => {
    const ids = [...event.currentTarget.querySelectorAll(":checked")].map((box) => box.value);
    go(withQuery(location.pathname, { ...(baseline && { baseline }), compare: ids.join() }));
  };
  return h("form", { class: "picks", "aria-label": "Experiments to compare", onchange }, boxes);
}

function result(row, baseline) {
  const href = withQuery(path("traces", row.traceId), { observation: row.id });
  return [
    h("a", { href }, inOneLine(row.output) || "no output"),
    h("div", { class: "tags" }, row.level === "ERROR" && chip("ERROR", "ERROR"), scoreChips(row.scores, baseline)),
  ];
}

function inOneLine(value) {
  const known = typeof value === "string" ? parsed(value) : value;
  const text = typeof known === "string" ? known : known?.content;
  return shorter(typeof text === "string" ? text : JSON.stringify(known) ?? "");
}
