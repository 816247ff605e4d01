"""Scores: from a request to a row, how to find them, and back."""

import re
import sqlite3
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from local_langfuse import PROJECT
from local_langfuse.store import Row
from local_langfuse.wire import (
    Query,
    Refused,
    as_object,
    check,
    finite,
    iso,
    microseconds,
    now_us,
    pairs,
    parse,
    stamps,
    text_in,
    to_json,
)

DATA_TYPES = ("NUMERIC", "BOOLEAN", "CATEGORICAL", "TEXT", "CORRECTION")
GROUPS = ("details", "subject", "annotation")
ENVIRONMENT = re.compile(r"(?!langfuse)[a-z0-9_-]{1,40}")
OPTIONAL_TEXTS = pairs(
    "traceId=trace_id observationId=observation_id sessionId=session_id "
    "datasetRunId=experiment_id comment=comment configId=config_id queueId=queue_id"
)


def score_row(item: Any) -> Row:
    """Return the row for a score that was sent; `Refused` says what is wrong with it."""
    item = as_object(check(item), "a score")
    data_type, value, string_value = _typed_value(item.get("value"), item.get("dataType"))
    time = item.get("timestamp")
    row = {
        "id": text_in(item, "id") or str(uuid.uuid4()),
        "name": text_in(item, "name"),
        "data_type": data_type,
        "value": value,
        "string_value": string_value,
        **{column: text_in(item, key) for key, column in OPTIONAL_TEXTS.items()},
        "metadata": _metadata(item.get("metadata")),
        "environment": text_in(item, "environment") or "default",
        "source": text_in(item, "source") or "API",
        "timestamp_us": now_us() if time is None else microseconds(time, "timestamp"),
    }
    _check_row(row)
    return row


def _typed_value(value: Any, asked: Any) -> tuple[str, float | None, str | None]:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    data_type = asked if asked is not None else "NUMERIC" if number else "CATEGORICAL"
    if data_type not in DATA_TYPES:
        raise Refused(f"dataType must be one of {', '.join(DATA_TYPES)}")
    if data_type in ("NUMERIC", "BOOLEAN"):
        if not number or (data_type == "BOOLEAN" and value not in (0, 1)):
            raise Refused(f"value must be a number{', 0 or 1' * (data_type == 'BOOLEAN')}")
        return data_type, finite(value, "value"), None
    if not isinstance(value, str) or (data_type == "TEXT" and not 1 <= len(value) <= 500):
        raise Refused(f"value must be a string{' of 1 to 500 characters' * (data_type == 'TEXT')}")
    return data_type, None, value


def _metadata(value: Any) -> str | None:
    if not isinstance(value, dict | None):
        raise Refused("metadata must be a JSON object")
    return None if value is None else to_json(value)


def _check_row(row: Row) -> None:
    if not row["name"]:
        raise Refused("a score needs a name")
    if sum(row[key] is not None for key in ("trace_id", "session_id", "experiment_id")) != 1:
        raise Refused("a score needs exactly one of traceId, sessionId and datasetRunId")
    if row["observation_id"] and not row["trace_id"]:
        raise Refused("observationId needs traceId")
    if row["source"] not in ("API", "ANNOTATION"):
        raise Refused("source must be API or ANNOTATION")
    if not ENVIRONMENT.fullmatch(row["environment"]):
        raise Refused("environment takes a-z, 0-9, - and _, and must not begin with langfuse")


def score_json(row: sqlite3.Row, groups: list[str]) -> Row:
    """Return a stored score as the API shows it, with the requested field groups."""
    answer = {
        "id": row["id"],
        "projectId": PROJECT,
        "name": row["name"],
        "source": row["source"],
        "timestamp": iso(row["timestamp_us"], "milliseconds"),
        "environment": row["environment"],
        **stamps(row),
        "dataType": row["data_type"],
        "value": _value(row),
    }
    if "details" in groups:
        answer["comment"], answer["configId"] = row["comment"], row["config_id"]
        answer["metadata"] = parse(row["metadata"] or "{}")
    if "subject" in groups:
        answer["subject"] = _subject(row)
    if "annotation" in groups:
        answer["authorUserId"], answer["queueId"] = None, row["queue_id"]
    return answer


def _value(row: sqlite3.Row) -> Any:
    if row["data_type"] == "BOOLEAN":
        return bool(row["value"])
    return row["value"] if row["data_type"] == "NUMERIC" else row["string_value"]


def _subject(row: sqlite3.Row) -> Row:
    if row["observation_id"]:
        return {"kind": "observation", "id": row["observation_id"], "traceId": row["trace_id"]}
    if row["trace_id"]:
        return {"kind": "trace", "id": row["trace_id"]}
    if row["session_id"]:
        return {"kind": "session", "id": row["session_id"]}
    return {"kind": "experiment", "id": row["experiment_id"]}


# Query parameters that take a comma-separated list, and the column each one searches.
LISTS = pairs(
    "id=id name=name source=source dataType=data_type environment=environment "
    "configId=config_id queueId=queue_id traceId=trace_id sessionId=session_id "
    "observationId=observation_id experimentId=experiment_id authorUserId=NULL"
)
UPPER = ("source", "dataType")
WITHIN = "{} IN (SELECT value FROM json_each(?))"


def score_where(query: Query) -> tuple[list[str], list[Any]]:
    """Return the conditions in a request for scores, and the values to bind."""
    lists = {name: query.words(name) for name in LISTS}
    _check_parameters(query, lists)
    sql, values = [], []
    for name, words in lists.items():
        if words is not None:
            sql.append(WITHIN.format(LISTS[name]))
            values.append(to_json([word.upper() for word in words] if name in UPPER else words))
    if query.text("value") is not None:
        found, wanted = _values(lists["dataType"], query.words("value") or [])
        sql.append(WITHIN.format(found))
        values.append(to_json(wanted))
    bounds: list[tuple[str, str, Callable[[str], Any]]] = [
        ("fromTimestamp", "timestamp_ms >= ?", lambda n: _milliseconds(query, n)),
        ("toTimestamp", "timestamp_ms < ?", lambda n: _milliseconds(query, n)),
        ("valueMin", "value >= ?", query.number),
        ("valueMax", "value <= ?", query.number),
    ]
    for name, condition, read in bounds:
        if query.text(name) is not None:
            sql.append(condition)
            values.append(read(name))
    return sql, values


def _milliseconds(query: Query, name: str) -> int:
    return microseconds(query.text(name), name) // 1000


def _check_parameters(query: Query, lists: Mapping[str, list[str] | None]) -> None:
    unknown = [group for group in query.words("fields") or [] if group not in GROUPS]
    if unknown:
        raise Refused(f"fields must be among {', '.join(GROUPS)}")
    if any(word.upper() not in DATA_TYPES for word in lists["dataType"] or []):
        raise Refused(f"dataType must be among {', '.join(DATA_TYPES)}")
    if lists["observationId"] is not None and lists["traceId"] is None:
        raise Refused("observationId needs traceId")
    if sum(lists[name] is not None for name in ("traceId", "sessionId", "experimentId")) > 1:
        raise Refused("give only one of traceId, sessionId and experimentId")
    bounded = any(query.text(name) is not None for name in ("valueMin", "valueMax"))
    if bounded and _single(lists["dataType"]) != "NUMERIC":
        raise Refused("valueMin and valueMax need dataType=NUMERIC")


def _single(data_types: list[str] | None) -> str | None:
    return data_types[0].upper() if data_types and len(data_types) == 1 else None


def _values(data_types: list[str] | None, words: list[str]) -> tuple[str, list[Any]]:
    kind = _single(data_types)
    if kind == "NUMERIC":
        return "value", [finite(word, "value") for word in words]
    if kind == "BOOLEAN":
        if not {*words} <= {"true", "false"}:
            raise Refused("value must be true or false")
        return "value", [float(word == "true") for word in words]
    if kind == "CATEGORICAL":
        return "string_value", words
    raise Refused("value needs one dataType: NUMERIC, BOOLEAN or CATEGORICAL")
