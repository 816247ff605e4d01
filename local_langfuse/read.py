"""Read observations and scores, a page at a time, newest first."""

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from local_langfuse import PROJECT
from local_langfuse.filters import OBSERVATION_COLUMNS, Condition, conditions, read_filter, where
from local_langfuse.scores import score_json, score_where
from local_langfuse.store import Row, Store
from local_langfuse.wire import Query, Refused, cursor_of, iso, pairs, parse, position_of

# Field groups of an observation: each name in the answer and the column it comes from.
GROUPS: Mapping[str, Mapping[str, str]] = {
    "core": pairs(
        "id=id traceId=trace_id startTime=start_us endTime=end_us parentObservationId=parent_id "
        "type=type latency=latency_ms"
    ),
    "basic": pairs(
        "name=name level=level statusMessage=status_message version=version userId=user_id "
        "sessionId=session_id environment=environment isRootObservation=is_root"
    ),
    "time": pairs(
        "completionStartTime=completion_start_us createdAt=created_us updatedAt=updated_us"
    ),
    "io": pairs("input=input output=output"),
    "metadata": pairs("metadata=metadata"),
    "model": pairs("model=model internalModelId=model_id modelParameters=model_parameters"),
    "usage": pairs(
        "usageDetails=usage_details inputUsage=input_tokens outputUsage=output_tokens "
        "totalUsage=total_tokens costDetails=cost_details inputCost=input_cost "
        "outputCost=output_cost totalCost=total_cost"
    ),
    "prompt": pairs("promptName=prompt_name promptVersion=prompt_version"),
    "metrics": pairs("timeToFirstToken=first_token_ms"),
    "trace_context": pairs("traceName=trace_name release=release tags=tags"),
}
JSON_COLUMNS = ("metadata", "model_parameters", "usage_details", "cost_details", "tags")
METADATA_CHARACTERS = 200


def observations(store: Store, query: Query) -> Row:
    """Return a page of observations as the API shows it."""
    if query.flag("parseIoAsJson"):
        raise Refused("parseIoAsJson is gone: input and output are strings")
    groups = _groups(query.words("fields"))
    asked = where(_conditions(query), OBSERVATION_COLUMNS)
    names = {name: column for group in groups for name, column in GROUPS[group].items()}
    keys, columns = ("start_ms", "trace_id", "id"), f"start_ms, {', '.join(names.values())}"
    rows, meta = newest_first(store, query, "observations", keys, asked, most=1000, columns=columns)
    whole = query.words("expandMetadata") or []
    return {"data": [_observation(row, names, whole) for row in rows], "meta": meta}


def newest_first(
    store: Store,
    query: Query,
    source: str,
    keys: Sequence[str],
    asked: tuple[list[str], list[Any]],
    *,
    most: int,
    columns: str = "*",
) -> tuple[list[sqlite3.Row], Row]:
    """Return a page of at most `most` rows, and its `meta` with the cursor of the next page.

    `keys` are the columns to sort by: a time and ids, newest first. They, `source` and
    `columns` come from our own code only; `asked` is what `filters.where` returns.
    """
    limit = query.count("limit", 50, most)
    sql, values = asked
    cursor = query.text("cursor")
    if cursor is not None:
        sql = [*sql, f"({', '.join(keys)}) < ({', '.join('?' * len(keys))})"]
        values = [*values, *position_of(cursor, (int, *[str] * (len(keys) - 1)))]
    rows = store.rows(
        f"SELECT {columns} FROM {source} WHERE {' AND '.join(sql) or 'true'}"  # noqa: S608
        f" ORDER BY {', '.join(f'{key} DESC' for key in keys)} LIMIT ?",
        [*values, limit + 1],
    )
    last = rows[limit - 1] if len(rows) > limit else None
    return rows[:limit], {"cursor": cursor_of([last[key] for key in keys])} if last else {}


def page_of(
    store: Store, sql: str, values: Sequence[Any], query: Query, limit: int = 50
) -> tuple[list[sqlite3.Row], Row]:
    """Return the rows of the numbered page that a request asks for, and its `meta`."""
    number, limit = query.count("page", 1, 10**6), query.count("limit", limit, 100)
    ((total,),) = store.rows(f"SELECT count(*) FROM ({sql})", values)  # noqa: S608
    rows = store.rows(f"{sql} LIMIT ? OFFSET ?", [*values, limit, (number - 1) * limit])
    meta = {"page": number, "limit": limit, "totalItems": total, "totalPages": -(-total // limit)}
    return rows, meta


def _groups(asked: list[str] | None) -> list[str]:
    wanted = ["core", "basic"] if asked is None else ["core", *asked]
    return [group for group in GROUPS if group in wanted]


def _conditions(query: Query) -> list[Condition]:
    structured = read_filter(query.text("filter"))
    taken = [condition.get("column") for condition in structured]
    return structured + [c for c in _simple(query) if c["column"] not in taken]


def _simple(query: Query) -> list[Condition]:
    """Return the plain query parameters as a structured filter."""
    plain = ("traceId", "name", "userId", "sessionId", "type", "level", "version")
    parent = query.text("parentObservationId")
    kind, operator = ("null", "is null") if parent == "" else ("string", "=")
    return conditions(
        *(("string", name, "=", query.text(name)) for name in plain),
        (kind, "parentObservationId", operator, parent),
        ("stringOptions", "environment", "any of", query.texts("environment")),
        ("datetime", "startTime", ">=", query.text("fromStartTime")),
        ("datetime", "startTime", "<", query.text("toStartTime")),
        ("boolean", "isRootObservation", "=", query.flag("isRootObservation")),
    )


def _observation(row: sqlite3.Row, names: Mapping[str, str], whole: Sequence[str]) -> Row:
    answer = {name: _answer(column, row[column]) for name, column in names.items()}
    answer["projectId"] = PROJECT
    if "totalCost" in answer:
        answer["totalCost"] = answer["totalCost"] or 0  # if unknown, costDetails is empty
    if "timeToFirstToken" in answer:
        answer["latency"] = answer["latency"] or None  # with metrics, Langfuse has no 0
    if "metadata" in answer:
        answer["metadata"] = {k: _shortened(k, v, whole) for k, v in answer["metadata"].items()}
    return answer


def _answer(column: str, stored: Any) -> Any:
    if stored is None:
        return None
    if column.endswith("_us"):
        return iso(stored)
    if column.endswith("_ms"):
        return stored / 1000
    if column == "is_root":
        return bool(stored)
    return parse(stored) if column in JSON_COLUMNS else stored


def _shortened(key: str, value: Any, whole: Sequence[str]) -> Any:
    cut = isinstance(value, str) and key not in whole
    return value[:METADATA_CHARACTERS] if cut else value


def scores(store: Store, query: Query) -> Row:
    """Return a page of scores as the API shows it."""
    keys = ("timestamp_ms", "id")
    rows, meta = newest_first(store, query, "scores", keys, score_where(query), most=100)
    data = [score_json(row, query.words("fields") or []) for row in rows]
    return {"data": data, "meta": {"limit": query.count("limit", 50, 100), **meta}}
