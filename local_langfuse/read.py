"""Reads: observations and scores, a page at a time, newest first."""

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from local_langfuse import PROJECT
from local_langfuse.filters import OBSERVATION_COLUMNS, Condition, read_filter, where
from local_langfuse.scores import score_json, score_where
from local_langfuse.store import Row, Store
from local_langfuse.wire import Query, Refused, cursor_of, iso, parse, position_of


def _columns(text: str) -> dict[str, str]:
    return dict(pair.split("=") for pair in text.split())


# Field groups of an observation: each name in the answer and the column it comes from.
GROUPS: Mapping[str, Mapping[str, str]] = {
    "core": _columns(
        "id=id traceId=trace_id startTime=start_us endTime=end_us parentObservationId=parent_id "
        "type=type latency=latency_ms"
    ),
    "basic": _columns(
        "name=name level=level statusMessage=status_message version=version userId=user_id "
        "sessionId=session_id environment=environment isRootObservation=is_root"
    ),
    "time": _columns(
        "completionStartTime=completion_start_us createdAt=created_us updatedAt=updated_us"
    ),
    "io": _columns("input=input output=output"),
    "metadata": _columns("metadata=metadata"),
    "model": _columns("model=model internalModelId=model_id modelParameters=model_parameters"),
    "usage": _columns(
        "usageDetails=usage_details inputUsage=input_tokens outputUsage=output_tokens "
        "totalUsage=total_tokens costDetails=cost_details inputCost=input_cost "
        "outputCost=output_cost totalCost=total_cost"
    ),
    "prompt": _columns("promptName=prompt_name promptVersion=prompt_version"),
    "metrics": _columns("timeToFirstToken=first_token_ms"),
    "trace_context": _columns("traceName=trace_name release=release tags=tags"),
}
JSON_COLUMNS = ("metadata", "model_parameters", "usage_details", "cost_details", "tags")
METADATA_CHARACTERS = 200


def observations(store: Store, query: Query) -> Row:
    """Return a page of observations as the API answers it."""
    if query.flag("parseIoAsJson"):
        raise Refused("parseIoAsJson is gone: input and output are texts")
    limit = query.count("limit", 50, 1000)
    groups = _groups(query.words("fields"))
    sql, values = where(_conditions(query), OBSERVATION_COLUMNS)
    cursor = query.text("cursor")
    if cursor is not None:
        sql.append("(start_ms, trace_id, id) < (?, ?, ?)")
        values += position_of(cursor, (int, str, str))
    names = {name: column for group in groups for name, column in GROUPS[group].items()}
    rows = store.rows(
        # Column names come from GROUPS, conditions from `where`; every value is bound.
        f"SELECT start_ms, {', '.join(names.values())} FROM observations"  # noqa: S608
        f" WHERE {' AND '.join(sql) or 'true'}"
        " ORDER BY start_ms DESC, trace_id DESC, id DESC LIMIT ?",
        [*values, limit + 1],
    )
    whole = query.words("expandMetadata") or []
    data = [_observation(row, names, whole) for row in rows[:limit]]
    last = rows[limit - 1] if len(rows) > limit else None
    meta = {"cursor": cursor_of([last["start_ms"], last["trace_id"], last["id"]])} if last else {}
    return {"data": data, "meta": meta}


def _groups(asked: list[str] | None) -> list[str]:
    wanted = ["core", "basic"] if asked is None else ["core", *asked]
    return [group for group in GROUPS if group in wanted]


def _conditions(query: Query) -> list[Condition]:
    structured = read_filter(query.text("filter"))
    taken = [condition.get("column") for condition in structured]
    return structured + [c for c in _simple(query) if c["column"] not in taken]


def _simple(query: Query) -> list[Condition]:
    """Return the plain query parameters in the form of a structured filter."""
    plain = ("traceId", "name", "userId", "sessionId", "type", "level", "version")
    asked: list[tuple[str, str, str, Any]] = [
        ("string", name, "=", query.text(name)) for name in plain
    ]
    asked += [
        ("stringOptions", "environment", "any of", query.texts("environment")),
        ("datetime", "startTime", ">=", query.text("fromStartTime")),
        ("datetime", "startTime", "<", query.text("toStartTime")),
        ("boolean", "isRootObservation", "=", query.flag("isRootObservation")),
    ]
    parent = query.text("parentObservationId")
    no_parent = ("null", "parentObservationId", "is null", "")
    asked.append(no_parent if parent == "" else ("string", "parentObservationId", "=", parent))
    names = ("type", "column", "operator", "value")
    return [dict(zip(names, one, strict=True)) for one in asked if one[3] is not None]


def _observation(row: sqlite3.Row, names: Mapping[str, str], whole: Sequence[str]) -> Row:
    answer = {name: _answer(column, row[column]) for name, column in names.items()}
    answer["projectId"] = PROJECT
    if "totalCost" in answer:
        answer["totalCost"] = answer["totalCost"] or 0  # unknown: then costDetails is empty
    if "timeToFirstToken" in answer:
        answer["latency"] = answer["latency"] or None  # beside the metrics, Langfuse has no 0
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
    """Return a page of scores as the API answers it."""
    limit = query.count("limit", 50, 100)
    fields = query.words("fields") or []
    sql, values = score_where(query)
    cursor = query.text("cursor")
    if cursor is not None:
        sql.append("(timestamp_ms, id) < (?, ?)")
        values += position_of(cursor, (int, str))
    rows = store.rows(
        f"SELECT * FROM scores WHERE {' AND '.join(sql) or 'true'}"  # noqa: S608  see score_where
        " ORDER BY timestamp_ms DESC, id DESC LIMIT ?",
        [*values, limit + 1],
    )
    data = [score_json(row, fields) for row in rows[:limit]]
    meta: Row = {"limit": limit}
    if len(rows) > limit:
        meta["cursor"] = cursor_of([rows[limit - 1]["timestamp_ms"], rows[limit - 1]["id"]])
    return {"data": data, "meta": meta}
