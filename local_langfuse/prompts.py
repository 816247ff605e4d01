"""Managed prompts: versions, and the labels that move from one version to the next."""

import re
import sqlite3
import uuid
from typing import Any

from local_langfuse import PROJECT
from local_langfuse.filters import Column, Condition, conditions, read_filter, where
from local_langfuse.read import page_of
from local_langfuse.store import Row, Store
from local_langfuse.wire import (
    Query,
    Refused,
    as_object,
    iso,
    now_us,
    parse,
    stamps,
    text_in,
    texts,
    to_json,
    whole,
)

LABEL = re.compile(r"[a-z0-9_.-]{1,36}")
REFERENCE = "@@@langfusePrompt:"  # stands for another prompt's text
MAX_NAME = 255
MAX_VERSION = 10**6
COLUMNS = {
    **{name: Column(name) for name in ("id", "name", "type")},
    "version": Column("version", "number"),
    "createdAt": Column("created_us / 1000", "datetime"),
    "updatedAt": Column("updated_us / 1000", "datetime"),
    "labels": Column("labels", "list"),
    "tags": Column("tags", "list"),
    "config": Column("config", "object"),
}
SET_LABEL = """INSERT INTO prompt_labels VALUES (?, ?, ?)
    ON CONFLICT DO UPDATE SET version = excluded.version"""
SET_LATEST = """INSERT INTO prompt_labels SELECT name, 'latest', max(version) FROM prompts
    WHERE name = ? GROUP BY name ON CONFLICT DO UPDATE SET version = excluded.version"""
# The highest version stands for the prompt: with max(), SQLite takes all columns from its row.
LIST = """SELECT name, type, tags, config, max(version), last_us,
    json_group_array(version) AS versions, json_group_array(json(labels)) AS labels
    FROM (SELECT *, max(updated_us) OVER (PARTITION BY name) AS last_us
        FROM prompt_versions WHERE {} ORDER BY name, version) GROUP BY name ORDER BY name"""


def create(store: Store, body: Any) -> Row:
    """Store the next version of a prompt and return it as the API shows it."""
    row, tags, labels = _checked(as_object(body))
    with store.writing():
        versions = store.rows(
            "SELECT * FROM prompts WHERE name = ? ORDER BY version DESC LIMIT 1", (row["name"],)
        )
        last = versions[0] if versions else None
        if last and last["type"] != row["type"]:
            raise Refused(f"this prompt has the type {last['type']}: choose another name")
        row["version"] = last["version"] + 1 if last else 1
        row["tags"] = to_json(tags) if tags is not None else last["tags"] if last else "[]"
        store.insert("prompts", [row])
        # Tags are the prompt's, not the version's.
        store.rows("UPDATE prompts SET tags = ? WHERE name = ?", (row["tags"], row["name"]))
        for label in labels:
            store.rows(SET_LABEL, (row["name"], label, row["version"]))
        store.rows(SET_LATEST, (row["name"],))
    return _version(store, row["name"], row["version"])


def _checked(body: Row) -> tuple[Row, list[str] | None, list[str]]:
    name, config, tags = text_in(body, "name"), body.get("config"), body.get("tags")
    if REFERENCE in to_json(body.get("prompt")):
        raise Refused("the local stand-in does not insert prompts into others: write it out")
    if name is None or len(name) > MAX_NAME or "|" in name:
        raise Refused(f"name must be a string of 1 to {MAX_NAME} characters, without |")
    now = now_us()
    row = {
        "id": str(uuid.uuid4()),
        "name": name,
        "type": _type(body),
        "prompt": to_json(body["prompt"]),
        "config": to_json({} if config is None else config),
        "commit_message": text_in(body, "commitMessage"),
        "created_us": now,
        "updated_us": now,
    }
    labels = [] if body.get("labels") is None else body["labels"]
    return row, None if tags is None else texts(tags, "tags"), _labels(labels)


def _type(body: Row) -> str:
    kind, prompt = body.get("type") or "text", body.get("prompt")
    fits = {
        "text": isinstance(prompt, str),
        "chat": isinstance(prompt, list) and all(_is_message(part) for part in prompt),
    }
    if not isinstance(kind, str) or not fits.get(kind):
        raise Refused(
            "prompt must be a string or, with type=chat, a list of messages with role and content "
            "and placeholders with type=placeholder and name"
        )
    return kind


def _is_message(part: Any) -> bool:
    if not isinstance(part, dict):
        return False
    keys = ("name",) if part.get("type") == "placeholder" else ("role", "content")
    return all(isinstance(part.get(key), str) for key in keys)


def _labels(value: Any) -> list[str]:
    labels = texts(value, "labels")
    if not all(LABEL.fullmatch(label) for label in labels):
        raise Refused("a label is 1 to 36 lowercase letters, digits, dots, - and _")
    return labels


def get(store: Store, name: str, query: Query) -> Row:
    """Return one version: by number or label, or else the one labelled `production`."""
    version, label = query.text("version"), query.text("label")
    if version is not None and label is not None:
        raise Refused("give version or label, not both")
    if version is not None:
        return _version(store, name, whole(version, "version", MAX_VERSION))
    label = label or "production"
    for row in store.rows(
        "SELECT version FROM prompt_labels WHERE name = ? AND label = ?", (name, label)
    ):
        return _version(store, name, row["version"])
    raise Refused(f"Prompt not found: '{name}' with label '{label}'", 404)


def _version(store: Store, name: str, version: int) -> Row:
    sql = "SELECT * FROM prompt_versions WHERE name = ? AND version = ?"
    for row in store.rows(sql, (name, version)):
        return _answer(row)
    raise Refused(f"Prompt not found: '{name}' with version {version}", 404)


def _answer(row: sqlite3.Row) -> Row:
    return {
        "id": row["id"],
        **stamps(row),
        "projectId": PROJECT,
        "createdBy": "API",
        **{key: row[key] for key in ("name", "version", "type")},
        **{key: parse(row[key]) for key in ("prompt", "config", "tags", "labels")},
        "commitMessage": row["commit_message"],
        "resolutionGraph": None,
    }


def set_labels(store: Store, name: str, version: str, body: Any) -> Row:
    """Move labels to a version, which keeps its own labels, and return that version."""
    number = whole(version, "version", MAX_VERSION)
    labels = texts(as_object(body).get("newLabels"), "newLabels")
    if "latest" in labels:
        raise Refused("the label latest moves by itself to each new version")
    with store.writing():
        _version(store, name, number)
        for label in _labels(labels):
            store.rows(SET_LABEL, (name, label, number))
        store.rows(
            "UPDATE prompts SET updated_us = ? WHERE name = ? AND version = ?",
            (now_us(), name, number),
        )
    return _version(store, name, number)


def delete(store: Store, name: str, query: Query) -> None:
    """Delete a prompt: all of it, or one version, or the version with a label."""
    is_all = query.text("version") is None and query.text("label") is None
    with store.writing():
        version = None if is_all else get(store, name, query)["version"]
        found = store.rows(
            "DELETE FROM prompts WHERE name = ? AND version = coalesce(?, version) RETURNING id",
            (name, version),
        )
        if not found:
            raise Refused(f"Prompt not found: '{name}'", 404)
        store.rows(
            "DELETE FROM prompt_labels WHERE name = ? AND version = coalesce(?, version)",
            (name, version),
        )
        store.rows(SET_LATEST, (name,))


def prompts(store: Store, query: Query) -> Row:
    """Return a page of the prompts that have matching versions, by name."""
    sql, values = where(_conditions(query), COLUMNS)
    found, meta = page_of(store, LIST.format(" AND ".join(sql) or "true"), values, query, 10)
    data = [
        {
            **{key: row[key] for key in ("name", "type")},
            "tags": parse(row["tags"]),
            "versions": parse(row["versions"]),
            "labels": sorted({label for labels in parse(row["labels"]) for label in labels}),
            "lastUpdatedAt": iso(row["last_us"], "milliseconds"),
            "lastConfig": parse(row["config"]),
        }
        for row in found
    ]
    return {"data": data, "meta": meta, "pagination": meta}


def _conditions(query: Query) -> list[Condition]:
    if query.text("filter"):  # takes precedence over the plain parameters
        return read_filter(query.text("filter"))
    return conditions(
        ("string", "name", "=", query.text("name")),
        ("number", "version", "=", query.number("version")),
        ("arrayOptions", "labels", "any of", query.texts("label")),
        ("arrayOptions", "tags", "any of", query.texts("tag")),
        ("datetime", "updatedAt", ">=", query.text("fromUpdatedAt")),
        ("datetime", "updatedAt", "<", query.text("toUpdatedAt")),
    )
