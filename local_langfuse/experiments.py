"""Experiments, read from the spans and scores that the SDK sent while it ran them."""

import sqlite3
from collections.abc import Mapping
from typing import Any

from local_langfuse.filters import Column, conditions, read_filter, where
from local_langfuse.read import newest_first
from local_langfuse.scores import score_json
from local_langfuse.store import Row, Store
from local_langfuse.wire import Query, Refused, decoded, iso, pairs

MAX_SCORES = 50
EXPERIMENTS = pairs("id=experiment_id name=experiment_name datasetId=dataset_id")
ITEMS = pairs(
    "experimentId=experiment_id experimentName=experiment_name experimentItemId=item_id "
    "datasetId=dataset_id"
)
GROUPED = """(SELECT experiment_id AS id, max(experiment_name) AS name, min(start_us) AS start_us,
    max(coalesce(end_us, start_us)) AS end_us, count(DISTINCT item_id) AS items,
    max(dataset_id) AS dataset_id, max(experiment_metadata) AS metadata, max(start_ms) AS last_ms
    FROM experiment_items WHERE {} GROUP BY experiment_id)"""


def experiments(store: Store, query: Query) -> Row:
    """Return a page of experiments, the one with the newest item first."""
    groups = _groups(query, "core", ("core", "metadata", "scores"))
    sql, values = _where(query, EXPERIMENTS)
    source = GROUPED.format(" AND ".join(sql))
    rows, meta = newest_first(store, query, source, ("last_ms", "id"), ([], values), most=100)
    data = [_experiment(row) for row in rows]
    for row, answer in zip(rows, data, strict=True):
        if "metadata" in groups:
            answer["metadata"] = _dict(row["metadata"])
        if "scores" in groups:
            answer["scores"] = _scores(store, query, "experiment_id = ?", row["id"])
    return {"data": data, "meta": meta}


def _experiment(row: sqlite3.Row) -> Row:
    return {
        "id": row["id"],
        "name": row["name"],
        "description": "",  # as in Langfuse, which shows it only with the items
        "startTime": iso(row["start_us"], "milliseconds"),
        "endTime": iso(row["end_us"], "milliseconds"),
        "itemCount": row["items"],
        "datasetId": row["dataset_id"],
    }


def items(store: Store, query: Query) -> Row:
    """Return a page of experiment items, newest first."""
    groups = _groups(query, "core,dataset", tuple(GROUPS))
    asked = _where(query, ITEMS)
    keys = ("start_ms", "trace_id", "id")
    rows, meta = newest_first(store, query, "experiment_items", keys, asked, most=100)
    data = [_item(row, groups) for row in rows]
    if "scores" in groups:
        its = "trace_id = ? AND coalesce(observation_id, ?) = ?"
        for row, answer in zip(rows, data, strict=True):
            ids = (row["trace_id"], row["id"], row["id"])
            answer["scores"] = _scores(store, query, its, *ids)
    return {"data": data, "meta": meta}


# Field groups of an item: each name in the answer, and the column it comes from.
GROUPS: Mapping[str, Mapping[str, str]] = {
    "core": pairs(
        "id=id traceId=trace_id startTime=start_us endTime=end_us level=level "
        "environment=environment experimentId=experiment_id experimentName=experiment_name "
        "experimentItemId=item_id"
    ),
    "dataset": pairs("experimentDatasetId=dataset_id experimentItemVersion=item_version"),
    "io": pairs("input=input output=output expectedOutput=expected_output"),
    "metadata": pairs("metadata=metadata"),
    "itemMetadata": pairs("experimentItemMetadata=item_metadata"),
    "experimentMetadata": pairs(
        "experimentMetadata=experiment_metadata experimentDescription=description"
    ),
    "scores": {},  # from another table
}


def _item(row: sqlite3.Row, groups: list[str]) -> Row:
    names = {name: c for group in ["core", *groups] for name, c in GROUPS[group].items()}
    return {name: _value(column, row[column]) for name, column in names.items()}


def _value(column: str, stored: Any) -> Any:
    if column.endswith("metadata"):
        return _dict(stored)
    if column.endswith("_us") and stored is not None:
        return iso(stored, "milliseconds")
    return stored


def _dict(text: Any) -> Row:
    value = {} if text is None else decoded(text)
    return value if isinstance(value, dict) else {"metadata": value}


def _groups(query: Query, default: str, known: tuple[str, ...]) -> list[str]:
    groups = query.words("fields") or default.split(",")
    if not set(groups) <= set(known):
        raise Refused(f"fields must be among {', '.join(known)}")
    return groups


def _where(query: Query, texts: Mapping[str, str]) -> tuple[list[str], list[Any]]:
    if query.text("fromStartTime") is None:
        raise Refused("fromStartTime is required")
    asked = read_filter(query.text("filter")) + conditions(
        *(("stringOptions", name, "any of", query.words(name)) for name in texts),
        ("datetime", "startTime", ">=", query.text("fromStartTime")),
        ("datetime", "startTime", "<", query.text("toStartTime")),
    )
    columns = {name: Column(sql) for name, sql in texts.items()}
    return where(asked, {**columns, "startTime": Column("start_ms", "datetime")})


def _scores(store: Store, query: Query, condition: str, *values: str) -> list[Row]:
    limit = query.count("scoreLimit", MAX_SCORES, MAX_SCORES)
    rows = store.rows(
        f"SELECT * FROM scores WHERE {condition}"  # noqa: S608  our own text
        " ORDER BY timestamp_ms DESC, id DESC LIMIT ?",
        [*values, limit],
    )
    return [score_json(row, ["details", "subject"]) for row in rows]
