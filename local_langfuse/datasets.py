"""Datasets and their items: inputs with expected outputs, to run experiments on."""

import sqlite3
import uuid
from typing import Any

from local_langfuse import PROJECT
from local_langfuse.read import page_of
from local_langfuse.store import Row, Store
from local_langfuse.wire import (
    Query,
    Refused,
    as_object,
    json_in,
    pairs,
    parse,
    stamps,
    text_in,
)

STATUS = ("ACTIVE", "ARCHIVED")
MAX_NAME = 255
NAMED = "SELECT * FROM datasets WHERE name = ?"
ITEMS = """SELECT items.*, datasets.name AS dataset_name FROM dataset_items AS items
    JOIN datasets ON datasets.id = items.dataset_id WHERE {}
    ORDER BY items.created_us DESC, items.id DESC"""
VALUES = pairs("input=input expectedOutput=expected_output metadata=metadata")
ITEM_FILTERS = pairs(
    "datasetName=datasets.name sourceTraceId=source_trace_id "
    "sourceObservationId=source_observation_id"
)


def create_dataset(store: Store, body: Any) -> Row:
    """Store a dataset, or update the one with this name, and return it as the API shows it."""
    given = as_object(body)
    if given.get("inputSchema") or given.get("expectedOutputSchema"):
        raise Refused("the local stand-in does not check items against a schema: remove it")
    row = {
        "id": str(uuid.uuid4()),
        "name": _short(given, "name"),
        "description": text_in(given, "description"),
        "metadata": json_in(given, "metadata"),
    }
    if not row["name"]:
        raise Refused("a dataset needs a name")
    with store.writing():
        optional = ("description", "metadata")
        store.upsert("datasets", [row], ("name",), kept=("id",), optional=optional)
    return _dataset(store.rows(NAMED, (row["name"],))[0])


def _short(given: Row, key: str) -> str | None:
    if len(text_in(given, key) or "") > MAX_NAME:
        raise Refused(f"{key} must have at most {MAX_NAME} characters")
    return text_in(given, key)


def datasets(store: Store, query: Query) -> Row:
    """Return a page of datasets, newest first."""
    sql = "SELECT * FROM datasets ORDER BY created_us DESC, id DESC"
    rows, meta = page_of(store, sql, (), query)
    return {"data": [_dataset(row) for row in rows], "meta": meta}


def dataset(store: Store, name: str, _: Query) -> Row:
    """Return one dataset, without its items."""
    return _dataset(_named(store, name))


def _named(store: Store, name: str | None) -> sqlite3.Row:
    for row in store.rows(NAMED, (name,)):
        return row
    raise Refused("Dataset not found", 404)


def _dataset(row: sqlite3.Row) -> Row:
    return {
        **{key: row[key] for key in ("id", "name", "description")},
        "metadata": parse(row["metadata"] or "null"),
        "inputSchema": None,
        "expectedOutputSchema": None,
        "projectId": PROJECT,
        **stamps(row),
    }


def put_item(store: Store, body: Any) -> Row:
    """Store an item, or update the one with this id; fields that are not given do not change."""
    given = as_object(body)
    if given.get("status") not in (None, *STATUS):
        raise Refused(f"status must be one of {', '.join(STATUS)}")
    row = {
        "id": _short(given, "id") or str(uuid.uuid4()),
        "dataset_id": _named(store, text_in(given, "datasetName"))["id"],
        "status": given.get("status"),
        **{column: json_in(given, name) for name, column in VALUES.items()},
        "source_trace_id": text_in(given, "sourceTraceId"),
        "source_observation_id": text_in(given, "sourceObservationId"),
    }
    with store.writing():
        stored = store.rows("SELECT dataset_id FROM dataset_items WHERE id = ?", (row["id"],))
        if stored and stored[0]["dataset_id"] != row["dataset_id"]:
            raise Refused(f"the item {row['id']} is already in another dataset", 404)
        optional = [column for column in row if column not in ("id", "dataset_id")]
        store.upsert("dataset_items", [row], ("id",), optional=optional)
    return item(store, row["id"])


def item(store: Store, item_id: str, _: Query | None = None) -> Row:
    """Return one item."""
    for row in store.rows(ITEMS.format("items.id = ?"), (item_id,)):
        return _item(row)
    raise Refused("Dataset item not found", 404)


def _item(row: sqlite3.Row) -> Row:
    return {
        "id": row["id"],
        "datasetId": row["dataset_id"],
        "datasetName": row["dataset_name"],
        "status": row["status"] or "ACTIVE",
        **{name: parse(row[column] or "null") for name, column in VALUES.items()},
        "sourceTraceId": row["source_trace_id"],
        "sourceObservationId": row["source_observation_id"],
        **stamps(row),
        "mediaReferences": [],
    }


def items(store: Store, query: Query) -> Row:
    """Return a page of items, newest first, including archived ones."""
    if query.text("version") is not None:
        raise Refused("the local stand-in keeps only the newest version of an item")
    if query.text("datasetName") is not None:
        _named(store, query.text("datasetName"))
    asked = {column: query.text(name) for name, column in ITEM_FILTERS.items()}
    given = {f"{column} = ?": text for column, text in asked.items() if text is not None}
    sql = ITEMS.format(" AND ".join(given) or "true")
    rows, meta = page_of(store, sql, [*given.values()], query)
    return {"data": [_item(row) for row in rows], "meta": meta}


def delete_item(store: Store, item_id: str, _: Query) -> Row:
    """Delete one item."""
    if not store.delete("dataset_items", "id", [item_id]):
        raise Refused("Dataset item not found", 404)
    return {"message": "Dataset item successfully deleted"}
