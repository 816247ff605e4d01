"""A plain page to look at what is stored. No script; every text is escaped."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Any

from local_langfuse import PROJECT
from local_langfuse.scores import score_json
from local_langfuse.store import Store
from local_langfuse.wire import iso

STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2rem;max-width:75rem}
table{border-collapse:collapse}td,th{text-align:left;padding:.2rem 1rem .2rem 0;vertical-align:top}
section{border-left:2px solid #ccc;padding-left:1rem;margin:.5rem 0 .5rem 1rem}
pre{white-space:pre-wrap;background:#8881;padding:.5rem;margin:.2rem 0}.ERROR{color:#b00}"""
NOTICE = "A local stand-in for one person on one machine. This is not Langfuse."
NEWEST = """SELECT trace_id, min(start_us) AS start_us,
    max(coalesce(end_us, start_us)) / 1000 - min(start_us) / 1000 AS latency_ms,
    coalesce(max(CASE WHEN parent_id IS NULL OR is_root THEN name END), max(trace_name), '') name,
    sum(total_tokens) AS total_tokens, sum(total_cost) AS total_cost,
    sum(model != '' AND total_cost IS NULL) AS unknown, max(user_id) AS user_id,
    max(session_id) AS session_id
    FROM observations WHERE trace_id IN (SELECT trace_id FROM observations WHERE is_root
        ORDER BY start_ms DESC, trace_id DESC LIMIT 50)
    GROUP BY trace_id ORDER BY min(start_us) DESC"""
HEADINGS = ("Trace", "Started", "Latency", "Tokens", "Cost", "User", "Session")


def newest(store: Store) -> str:
    """Return the page of the 50 newest traces."""
    rows = [_trace_cells(row) for row in store.rows(NEWEST)]
    return _page("Newest traces", _table(rows) if rows else "<p>Nothing is stored yet.</p>")


def _trace_cells(row: sqlite3.Row) -> list[str]:
    link = (
        f'<a href="/project/{PROJECT}/traces/{escape(row["trace_id"])}">{escape(row["name"])}</a>'
    )
    cost = _cost(row["total_cost"], unknown=row["unknown"] > 0)
    plain = (
        iso(row["start_us"], "seconds"),
        _duration(row["latency_ms"]),
        row["total_tokens"],
        cost,
    )
    return [link, *(escape(str(text)) for text in (*plain, row["user_id"], row["session_id"]))]


def trace(store: Store, trace_id: str) -> str | None:
    """Return the page of one trace, or None if nothing of it is stored."""
    rows = store.rows(
        "SELECT * FROM observations WHERE trace_id = ? ORDER BY start_us, rowid", (trace_id,)
    )
    scores = store.rows(
        "SELECT * FROM scores WHERE trace_id = ? ORDER BY timestamp_us, id", (trace_id,)
    )
    name = next((row["name"] for row in rows if row["is_root"]), trace_id)
    return _page(name, "".join(_tree(rows, scores))) if rows else None


def missing(trace_id: str) -> str:
    """Return the page for a trace of which nothing is stored."""
    return _page("No such trace", f"<p>Nothing is stored for {escape(trace_id)}.</p>")


def _tree(rows: Sequence[sqlite3.Row], scores: Sequence[sqlite3.Row]) -> Iterator[str]:
    """Yield the tree's HTML. A parent that is not stored (yet) leaves its children at the top."""
    stored = {row["id"] for row in rows}
    below: dict[str | None, list[Any]] = {}
    for row in reversed(rows):
        below.setdefault(row["parent_id"] if row["parent_id"] in stored else None, []).append(row)
    # A stack, since a trace may be nested deeper than Python calls. Spans that are each
    # other's ancestors have no top; they come after the others.
    to_do = below.pop(None, [])
    while to_do or below:
        node = (to_do := to_do or below.pop(next(iter(below)))).pop()
        if isinstance(node, str):
            yield node
            continue
        own = [score for score in scores if score["observation_id"] == node["id"]]
        yield f"<section>{_observation(node, own)}"
        to_do += ["</section>", *below.pop(node["id"], [])]
    yield _scores([score for score in scores if not score["observation_id"]])


def _observation(row: sqlite3.Row, scores: Sequence[sqlite3.Row]) -> str:
    facts = [row["type"], _duration(row["latency_ms"]), row["model"], row["level"]]
    if row["model"]:
        facts += [f"{row['total_tokens']} tokens", _cost(row["total_cost"], unknown=True)]
    texts = [("status", row["status_message"]), ("input", row["input"]), ("output", row["output"])]
    shown = "".join(f"{label}<pre>{escape(text)}</pre>" for label, text in texts if text)
    line = escape(" · ".join(fact for fact in facts if fact))
    level = escape(row["level"])
    return f'<b class="{level}">{escape(row["name"])}</b> {line}<br>{shown}{_scores(scores)}'


def _scores(scores: Iterable[sqlite3.Row]) -> str:
    texts = (
        f"score {s['name']}: {score_json(s, [])['value']} {s['comment'] or ''}" for s in scores
    )
    return "".join(f"<p>{escape(text)}</p>" for text in texts)


def _duration(milliseconds: int | None) -> str:
    return "" if milliseconds is None else f"{milliseconds / 1000:.3f} s"


def _cost(usd: float | None, *, unknown: bool) -> str:
    known = "" if usd is None else f"${usd:.6f}"
    return " + ".join([known] * bool(known) + ["unknown cost"] * (unknown and usd is None))


def _table(rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{heading}</th>" for heading in HEADINGS)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _page(title: str, body: str) -> str:
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    top = f'<p><a href="/">All traces</a> · {NOTICE}</p><h1>{escape(title)}</h1>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{top}{body}</body></html>'
