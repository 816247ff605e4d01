"""Keep traces longer than Langfuse keeps them, and delete them there when you say so.

Your plan's retention ends, a database fills up, an auditor asks in two years. This copies
every observation and every score of a period into two files, one JSON object per line. If it
is killed half-way, the next run continues. Without `--yes` it only counts what it would delete.

Run it:

    python -m recipes.export_traces
    python -m recipes.export_traces --from 2026-10-01 --to 2026-11-01 --folder ../october
    python -m recipes.export_traces --folder ../october --delete-older-than 30 --yes

Export a period that ended some time ago: a step is stored when it ends, so what is still
running when you export, or is scored later, is not in the files.

Try next: run a lesson, set PAGE_SIZE to 1, stop an export to `--folder ../slow` with Ctrl-C,
and compare `export.json` there with the two files before you start it again.
"""

import argparse
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from langfuse import Langfuse
from langfuse.api.core import ApiError

from common.client import connect, tracing_is_on
from common.console import fail, progress, show_line, show_link, show_result, show_section, waiting
from common.readback import FIELDS
from common.settings import TOP, read_settings
from recipes import Arguments

BEGINNING = "2023-01-01T00:00:00+00:00"  # before there was a Langfuse
OBSERVATIONS, SCORES = "observations.jsonl", "scores.jsonl"
PAGE_SIZE = 500  # rows; the API returns up to 1000 observations, or up to 100 scores
TRACES_AT_ONCE = 50  # more ids would not fit into one address
Row = dict[str, Any]  # one line of a file: an object as the API returns it
State = dict[str, Any]  # the content of export.json


# %% 1. Fix the period once, and remember how far you got
#
# "Until now" means something else an hour later. The first run writes the period down. Each
# later run continues with that period or refuses, so no folder mixes two periods.


def moment(text: str) -> str:
    """`moment("2026-11-01") -> "2026-11-01T00:00:00+00:00"`; without an offset it is UTC."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        message = f"{text!r} is not a day or a time such as 2026-11-01"
        raise argparse.ArgumentTypeError(message) from error
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC).isoformat()


def read_arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = Arguments(prog="python -m recipes.export_traces")
    default = (TOP / read_settings()["LOCAL_LANGFUSE_DB"].value).with_name("export")
    parser.add_argument("--from", dest="start", type=moment, help="a day or a time, ISO 8601")
    parser.add_argument("--to", dest="end", type=moment, help="the first moment after the period")
    parser.add_argument("--folder", type=Path, default=default, help="where the files go")
    parser.add_argument("--delete-older-than", type=int, metavar="DAYS")
    parser.add_argument("--yes", action="store_true", help="delete instead of counting")
    asked = parser.parse_args()
    now = datetime.now(UTC).isoformat()
    if not (asked.start or BEGINNING) < (asked.end or now) <= now:
        parser.error("--from must be before --to, and --to must not be in the future")
    if asked.delete_older_than not in (None, *range(1, 36_501)):
        parser.error("--delete-older-than must be from 1 to 36500 days")
    if asked.yes and not asked.delete_older_than:
        parser.error("--yes needs --delete-older-than")
    if asked.yes and not (asked.folder / "export.json").exists():
        parser.error(f"nothing is exported to {asked.folder} yet: first run the same without --yes")
    return asked


def open_state(folder: Path, project: str, start: str | None, end: str | None) -> State:
    """Return the folder's state, or a new one; raise FileExistsError if the period differs.

    For each file: the first `size` bytes are complete pages, the next page begins at `cursor`
    (null means at the newest row), and `added` counts the rows of this round.
    """
    file = folder / "export.json"
    if not file.exists():
        part = {"size": 0, "cursor": None, "added": 0, "is_done": False}
        period = {"start": start or BEGINNING, "end": end or datetime.now(UTC).isoformat()}
        folder.mkdir(parents=True, exist_ok=True)
        save_state(folder, {"project": project, **period, OBSERVATIONS: part, SCORES: part})
    state: State = json.loads(file.read_text("utf-8"))
    asked = {"project": project, "start": start, "end": end}
    if any(value not in (None, state[name]) for name, value in asked.items()):
        held = f"{state['start']} to {state['end']} of project {state['project']}"
        raise FileExistsError(f"{folder} holds {held}")
    return state


def save_state(folder: Path, state: State) -> None:
    """Replace the state file in one step, so that a kill leaves the old one or the new one."""
    draft = folder / "export.json.new"
    draft.write_text(json.dumps(state, indent=2), encoding="utf-8")
    draft.replace(folder / "export.json")


# %% 2. Read page by page, and every value in full
#
# The API returns the newest row first, and a cursor that names the last row of the page, so
# rows that arrive or disappear meanwhile shift nothing. It cuts a metadata value after 200
# characters unless you ask for its key, so a page with such a value is read a second time.


def read_observations(langfuse: Langfuse, state: State) -> Any:
    """Return the next page of observations with every field.

    A metadata value stays cut if its key contains a comma: the API separates keys by commas.
    """
    keys: set[str] = set()
    while True:
        page = langfuse.api.observations.get_many(
            fields=FIELDS,
            expand_metadata=",".join(sorted(keys)) or None,
            from_start_time=datetime.fromisoformat(state["start"]),
            to_start_time=datetime.fromisoformat(state["end"]),
            cursor=state[OBSERVATIONS]["cursor"],
            limit=PAGE_SIZE,
        )
        fields = [field for row in page.data for field in (row.metadata or {}).items()]
        long = {key for key, value in fields if isinstance(value, str) and len(value) >= 200}
        if long <= keys:
            return page
        keys |= long


def read_scores(langfuse: Langfuse, state: State) -> Any:
    """Return the next page of scores with every field."""
    return langfuse.api.scores.get_many(
        fields="details,subject,annotation",
        from_timestamp=datetime.fromisoformat(state["start"]),
        to_timestamp=datetime.fromisoformat(state["end"]),
        cursor=state[SCORES]["cursor"],
        limit=min(PAGE_SIZE, 100),
    )


def count_stored(langfuse: Langfuse, state: State) -> int:
    """Return how many rows the period has, without TEXT scores: no view counts those."""
    metrics = [{"measure": "count", "aggregation": "count"}]
    query = {"metrics": metrics, "fromTimestamp": state["start"], "toTimestamp": state["end"]}
    total = 0
    for view in ("observations", "scores-numeric", "scores-categorical"):
        answer = langfuse.api.metrics.metrics(query=json.dumps({**query, "view": view}))
        total += sum(int(row["count_count"]) for row in answer.data)
    return total


# %% 3. Append a page, and only then record it
#
# A kill can come between any two lines of code. So the page is on the disk before the state
# counts it, and whatever follows the counted bytes is cut off at the next start. A round
# misses rows that are newer than its cursor, so it is repeated until nothing new is found.


def rows_in(file: Path) -> Iterator[Row]:
    """Yield the rows of a JSON Lines file."""
    with file.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def export_file(
    langfuse: Langfuse, folder: Path, state: State, name: str, done: Callable[[], None]
) -> int:
    """Append the missing rows to a file, call `done` for each line, and count the lines."""
    file, part = folder / name, state[name]
    read_page = {OBSERVATIONS: read_observations, SCORES: read_scores}[name]
    with file.open("ab") as out:
        if out.tell() < part["size"]:
            raise FileExistsError(f"{file} is shorter than export.json says")
        out.truncate(part["size"])
        # An observation's id is unique only within its trace.
        known = {(row.get("traceId"), row["id"]) for row in rows_in(file)}
        for _ in known:
            done()
        while not part["is_done"]:
            page = read_page(langfuse, state)
            for row in page.data:
                key = getattr(row, "trace_id", None), row.id
                if key not in known:
                    known.add(key)
                    out.write(f"{row.json()}\n".encode())
                    part["added"] += 1
                    done()
            out.flush()
            os.fsync(out.fileno())
            part |= {"size": file.stat().st_size, "cursor": page.meta.cursor}
            if page.meta.cursor is None:  # the round is over
                part |= {"is_done": part["added"] == 0, "added": 0}
            save_state(folder, state)
    return len(known)


# %% 4. Delete only what the files hold
#
# A deletion cannot be undone. A trace may go if its newest observation is older than you
# said, and if everything stored of it is in the files, unchanged. A trace that has grown,
# changed or been scored since the export stays.


def versions(rows: Iterable[Row]) -> dict[str, set[tuple[str, str]]]:
    """Return, for each trace, the id and the last change of its observations and scores."""
    by_trace: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for row in rows:
        subject = row.get("subject", row)  # what a score belongs to: a trace, a step, a session
        trace = subject["id"] if subject.get("kind") == "trace" else subject.get("traceId", "")
        by_trace[trace].add((row["id"], row["updatedAt"]))
    return by_trace


def stored_rows(langfuse: Langfuse, traces: list[str]) -> Iterator[Row]:
    """Yield all observations and scores of these traces as they are stored now."""
    api, ids = langfuse.api, ",".join(traces)
    one_of = {"type": "stringOptions", "column": "traceId", "operator": "any of", "value": traces}
    get_steps = partial(api.observations.get_many, filter=json.dumps([one_of]), fields="core,time")
    get_scores = partial(api.scores.get_many, trace_id=ids, fields="subject")
    for get in (get_steps, get_scores):
        page = get(limit=100)
        rows = page.data
        while page.meta.cursor:
            page = get(limit=100, cursor=page.meta.cursor)
            rows += page.data
        yield from (json.loads(row.json()) for row in rows)


def delete_old(langfuse: Langfuse, folder: Path, before: datetime, sure: bool) -> tuple[int, int]:
    """Count the old traces that may go and those that must stay; delete the former if `sure`.

    In Langfuse: open Tracing, and the old traces are gone. Langfuse Cloud accepts a deletion
    at once and carries it out in the background, so this can take a while there.
    """
    exported = versions(row for name in (OBSERVATIONS, SCORES) for row in rows_in(folder / name))
    ended: dict[str, datetime] = {}  # by trace: when its last step did
    for row in rows_in(folder / OBSERVATIONS):
        end = datetime.fromisoformat(row["endTime"] or row["startTime"])
        ended[row["traceId"]] = max(end, ended.get(row["traceId"], end))
    old = [trace for trace, end in ended.items() if end < before]
    gone = kept = 0
    for first in range(0, len(old), TRACES_AT_ONCE):
        stored = versions(stored_rows(langfuse, old[first : first + TRACES_AT_ONCE]))
        may_go = [trace for trace, rows in stored.items() if rows <= exported[trace]]
        if sure and may_go:
            langfuse.api.trace.delete_multiple(trace_ids=may_go)
        gone, kept = gone + len(may_go), kept + len(stored) - len(may_go)
    return gone, kept


def export_and_delete(langfuse: Langfuse, asked: argparse.Namespace) -> None:
    """Export, delete if asked to, and print what the folder holds."""
    project = langfuse.api.projects.get().data[0]
    state = open_state(asked.folder, project.id, asked.start, asked.end)
    show_section(f"Period {state['start']} to {state['end']}")
    if state[OBSERVATIONS]["is_done"] and state[SCORES]["is_done"]:
        show_line("  This export is complete: for anything newer, use another --folder.")
    with progress("Exporting", count_stored(langfuse, state)) as done:
        for name in (OBSERVATIONS, SCORES):
            lines = export_file(langfuse, asked.folder, state, name, done)
            show_result(name, f"{lines} lines")
    if asked.delete_older_than:
        before = datetime.now(UTC) - timedelta(days=asked.delete_older_than)
        with waiting("Comparing the files with what is stored"):
            gone, kept = delete_old(langfuse, asked.folder, before, asked.yes)
        fate = "handed to Langfuse to delete" if asked.yes else "would be deleted; add --yes"
        show_result("old traces", f"{gone} {fate}")
        show_result("kept", f"{kept} that grew or changed since the export")
    url = f"{os.environ['LANGFUSE_BASE_URL']}/project/{project.id}/traces"
    show_link(f"{'in Langfuse':<20} ", url)
    show_result("in files", asked.folder.resolve())


def main() -> None:
    """Export, and say in one line what stopped it, if anything did."""
    asked = read_arguments()
    connect(asks_model=False)
    langfuse = Langfuse()
    if not tracing_is_on():
        fail("Tracing is off, so nothing can be read: unset LANGFUSE_TRACING_ENABLED.", 2)
    try:
        export_and_delete(langfuse, asked)
    except OSError as error:
        fail(f"{error}: choose another --folder.", 2)
    except (httpx.HTTPError, ApiError) as error:
        cause = getattr(error, "status_code", error)
        fail(f"Langfuse did not answer ({cause}). Run the same command again to continue.", 1)


if __name__ == "__main__":
    main()
