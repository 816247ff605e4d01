// Calls of the public API, as a script would make them.

import { isPriced, openView, withQuery } from "./base.js";

export const MOST = 1000; // the API's limit: rows in an answer, options in a condition
const ADDRESS_LENGTH = 48_000; // the server reads at most 64 kB of address and headers

async function request(url, signal) {
  try {
    return await fetch(url, { signal, cache: "no-store" });
  } catch (error) {
    if (signal.aborted) throw error;
    throw new Error("The local instance is not answering. Is it still running?");
  }
}

export async function get(name, query = {}) {
  const signal = openView();
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== null);
  const url = withQuery(`/api/public/${name}`, given);
  let answer = await request(url, signal);
  if (answer.status === 401) { // the server was restarted: loading the page signs in again
    await request("/", signal);
    answer = await request(url, signal);
  }
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.message);
  return body;
}

/** All rows of a list that is paged with a cursor. */
export async function all(name, query) {
  const rows = [];
  let cursor;
  do {
    const { data, meta } = await get(name, { ...query, cursor });
    rows.push(...data);
    ({ cursor } = meta);
  } while (cursor);
  return rows;
}

/** All rows of a list with numbered pages. */
export async function pages(name, query = {}) {
  const page = (number) => get(name, { ...query, limit: 100, page: number });
  const first = await page(1);
  const rest = await Promise.all(Array.from({ length: first.meta.totalPages - 1 }, (_, i) => page(i + 2)));
  return [first, ...rest].flatMap(({ data }) => data);
}

export const where = (type, column, operator, value) => ({ type, column, operator, value });
export const is = (column, value) => where("string", column, "=", value);
export const among = (column, values) => where("stringOptions", column, "any of", values);
export const isFilled = (column) => where("stringOptions", column, "none of", [""]);
export const IS_ROOT = where("boolean", "isRootObservation", "=", true);
export const IS_CALL = among("type", ["GENERATION", "EMBEDDING"]);
export const EVER = { fromTimestamp: "2000-01-01T00:00:00Z", toTimestamp: "2100-01-01T00:00:00Z" };

/** A page of observations that meet all conditions in `filter`, newest first. */
export const observations = (filter, query) => get("v2/observations", { filter: JSON.stringify(filter), ...query });
export const allObservations = (filter, fields) =>
  all("v2/observations", { filter: JSON.stringify(filter), limit: MOST, fields });

/**
 * Rows of the Metrics API: `metrics("observations", ["sum totalCost"], { by: ["userId"] })`. `top` is the name to sort
 * by, largest first: without it, Langfuse does not group by user, session or trace.
 */
export async function metrics(view, names, { by = [], filters = [], top, ...more } = {}) {
  const query = {
    view, filters, ...EVER, ...more,
    metrics: names.map((name) => name.split(" ")).map(([aggregation, measure]) => ({ aggregation, measure })),
    dimensions: by.map((field) => ({ field })),
    orderBy: top && [{ field: top.replace(" ", "_"), direction: "desc" }],
    config: { row_limit: MOST },
  };
  return (await get("v2/metrics", { query: JSON.stringify(query) })).data;
}

/** What `ask` returns for these texts, in several requests if they are too long for one address. */
export async function inParts(texts, ask) {
  const parts = [[]];
  let length = 0;
  for (const text of texts) {
    length += encodeURIComponent(text).length + 9; // quotes and comma, encoded
    if (length > ADDRESS_LENGTH && parts.at(-1).length) {
      parts.push([]);
      length = 0;
    }
    parts.at(-1).push(text);
  }
  return (await Promise.all(parts.filter((part) => part.length).map(ask))).flat();
}

/** How many observations are stored: a cheap request that works for every view. */
export async function countStored() {
  const [row] = await metrics("observations", ["count count"]);
  return row?.count_count ?? 0;
}

/** Numbers that change when an observation or a score is stored. */
export const countAll = () => Promise.all([
  countStored(),
  metrics("scores-numeric", ["count count", "sum value"]),
  metrics("scores-categorical", ["count count"]),
]);

/** Calls without a total cost: their cost is unknown, or they used nothing. `isPriced` tells them apart. */
export const NO_COST = [isFilled("model"), where("null", "totalCost", "is null", "")];

/** The newest calls of unknown cost, which are in no sum, and whether these are all of them. */
export async function unpricedCalls(filters) {
  const query = { limit: MOST, fields: "core,basic,model,usage" };
  const { data, meta } = await observations([...NO_COST, ...filters], query);
  return { rows: data.filter((row) => !isPriced(row)), isAll: !meta.cursor };
}

/** Tokens and cost from a row of the Metrics API, where no cost, an unknown cost and $0 are all 0. */
export function summed(row, { unknown, free = false }) {
  const tokens = row?.sum_totalTokens ?? 0;
  return { tokens, cost: row?.sum_totalCost || (free || (tokens && !unknown) ? 0 : null), unknown };
}
