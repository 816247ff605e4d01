"""Keep traces longer than Langfuse keeps them, and delete them there when you say so.

A plan's retention ends, a database fills up, an auditor asks in two years. This copies
every observation and every score of a period into two files, one row of the API a line.
Killed half-way, it goes on where it was. Deleting takes one more word than asking.

Run it:

    python -m recipes.export_traces
    python -m recipes.export_traces --from 2026-11-01 --to 2026-12-01 --folder november
    python -m recipes.export_traces --folder november --delete-older-than 30
    python -m recipes.export_traces --folder november --delete-older-than 30 --yes

A finished folder holds each row of the period once: all that were stored when the last
round of reading began. A step is stored when it ends, so let a period end some time ago:
what is still running then, or is scored later, is not in it.

Try next: run a lesson, export with `--page-size 1`, stop it with Ctrl-C, and compare
`export.json` with the two files before you start it again.
"""

import argparse
import json
import os
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import httpx
from langfuse import Langfuse
from langfuse.api.core import ApiError

from common import console
from common.client import connect, tracing_is_on
from common.console import fail, show_line, show_result, show_section
from common.readback import FIELDS, poll
from common.settings import TOP, read_settings

BEGINNING = datetime(2023, 1, 1, tzinfo=UTC)  # there was no Langfuse before
FILES = ("observations.jsonl", "scores.jsonl")
TRACES_AT_ONCE = 50  # an address has room for no more ids,
KEYS_AT_ONCE = 100  # nor for more keys of metadata
Row = dict[str, Any]  # one line: a row as the API answers it
State = dict[str, Any]  # the content of export.json
Pages = Iterator[tuple[list[Any], str | None]]  # the SDK's rows, and the cursor of the next page


# %% 1. Fix the period once, and remember how far you came
#
# "Until now" means something else an hour later. The first run writes the period down,
# and every later one goes on with that period or refuses, so no folder mixes two.


class ExportError(Exception):
    """The export cannot go on; the message says what to do."""


def open_state(folder: Path, project: str, start: datetime | None, end: datetime | None) -> State:
    """Return the folder's state, or a new one; raise ExportError if it is of another period.

    Of each file: what lies before `size` bytes is whole and stays; the next page begins at
    `cursor`, null for the newest row; `added` counts the lines of this round.
    """
    file, now = folder / "export.json", datetime.now(UTC)
    asked = {"project": project, "start": start, "end": end}
    if not file.exists():
        first, last = start or BEGINNING, end or now
        if not first < last <= now:
            raise ExportError("--from must lie before --to, and --to not in the future.")
        part = {"size": 0, "cursor": None, "added": 0, "is_done": False}
        times = {"start": first.isoformat(), "end": last.isoformat()}
        return {"project": project, **times, **{name: {**part} for name in FILES}}
    state: State = json.loads(file.read_text("utf-8"))
    for name, value in asked.items():
        text = value.isoformat() if isinstance(value, datetime) else value
        if text not in (None, state[name]):
            raise ExportError(
                f"{folder} holds {state['start']} to {state['end']} of project "
                f"{state['project']}: choose another --folder."
            )
    return state


def save_state(folder: Path, state: State) -> None:
    """Replace the state file in one step: whoever reads finds the old one or the new one."""
    draft = folder / "export.json.new"
    with draft.open("w", encoding="utf-8") as file:
        json.dump(state, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(folder / "export.json")


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Keep a second export out of the folder, by a lock that ends with its process."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "export.lock"
    file.touch()
    with closing(sqlite3.connect(file, timeout=0)) as lock:
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            raise ExportError(f"Another export is at work in {folder}: let it finish.") from error
        yield


# %% 2. Read page by page, and every value whole
#
# The API gives the newest row first, and its cursor names the last one (time, trace, id),
# so rows that come or go meanwhile shift nothing. Metadata beyond 200 characters is cut
# unless its key is asked for, so a page with such a value is read once more.


def pages_of(read: Callable[..., Any], cursor: str | None = None) -> Pages:
    """Yield the pages of a list that the API gives with a cursor."""
    while True:
        page = read(cursor=cursor)
        cursor = page.meta.cursor
        yield page.data, cursor
        if cursor is None:
            return


def read_whole(langfuse: Langfuse, whole: set[str], **query: Any) -> Any:
    """Return a page of observations with every field, and their metadata whole.

    `whole` are the keys to ask for. It grows by those that came cut, for the next page, too.
    """
    if len(whole) > KEYS_AT_ONCE:
        whole.clear()
    while True:
        asked = ",".join(sorted(whole)) or None
        page = langfuse.api.observations.get_many(fields=FIELDS, expand_metadata=asked, **query)
        cut = {key for row in page.data for key in long_keys(row.metadata) if "," not in key}
        if cut <= whole:
            return page
        whole |= cut


def long_keys(metadata: Any) -> list[str]:
    """Return the keys with 200 characters or more: the API may have cut their values."""
    pairs = metadata.items() if isinstance(metadata, dict) else ()
    return [key for key, value in pairs if isinstance(value, str) and len(value) >= 200]


def count_stored(langfuse: Langfuse, view: str, start: str, end: str) -> int:
    """Return how many rows a view of the Metrics API has in the period.

    In Langfuse: the same number stands under the table of observations or scores. Scores of
    the type TEXT are in no view, so of scores it is the least there is.
    """
    count = [{"measure": "count", "aggregation": "count"}]
    query = {"view": view, "metrics": count, "fromTimestamp": start, "toTimestamp": end}
    rows = langfuse.api.metrics.metrics(query=json.dumps(query)).data
    return sum(int(row["count_count"]) for row in rows)


# %% 3. Append a page, and only then say so
#
# A kill can come between any two lines. First the page is on the disk, then the state
# that counts it; what lies behind the counted bytes is cut off at the next start. A round
# misses what arrives in front of its cursor, so rounds follow until one finds nothing new.


def rows_in(file: Path) -> Iterator[Row]:
    """Yield the rows of a JSON Lines file."""
    with file.open(encoding="utf-8", newline="\n") as lines:
        yield from map(json.loads, lines)


def cut_back(file: Path, size: int) -> None:
    """Cut off what a killed run left behind its last page, such as half a line."""
    file.touch()
    if file.stat().st_size < size:
        raise ExportError(f"{file} is shorter than export.json says: choose another --folder.")
    os.truncate(file, size)


def export_file(
    file: Path,
    part: State,
    read: Callable[..., Any],
    save: Callable[[], None],
    done: Callable[[], None],
) -> None:
    """Append rows to the file until a round finds none that it does not hold.

    `read` returns the page at a cursor, `save` keeps the state, `done` is called once a
    line. An observation's id is unique only within its trace.
    """
    cut_back(file, part["size"])
    known = {(row.get("traceId"), row["id"]) for row in rows_in(file)}
    for _ in known:
        done()
    with file.open("ab") as out:
        while not part["is_done"]:
            for rows, cursor in pages_of(read, part["cursor"]):
                found = {(getattr(row, "trace_id", None), row.id): row for row in rows}
                fresh = [found[key] for key in found if key not in known]
                out.writelines(f"{row.json()}\n".encode() for row in fresh)
                out.flush()
                os.fsync(out.fileno())
                known |= found.keys()
                added = part["added"] + len(fresh)
                part |= {"size": out.tell(), "cursor": cursor, "added": added}
                if cursor is None:  # the round is over
                    part |= {"is_done": added == 0, "added": 0}
                save()
                for _ in fresh:
                    done()


def export(langfuse: Langfuse, folder: Path, state: State, page_size: int) -> None:
    """Write what the files of the folder still lack."""
    start, end = datetime.fromisoformat(state["start"]), datetime.fromisoformat(state["end"])
    observations = partial(
        read_whole, langfuse, set(), limit=page_size, from_start_time=start, to_start_time=end
    )
    scores = partial(
        langfuse.api.scores.get_many,
        fields="details,subject,annotation",
        limit=min(page_size, 100),  # the most that the API gives
        from_timestamp=start,
        to_timestamp=end,
    )
    views = ("observations", "scores-numeric", "scores-categorical")
    total = sum(count_stored(langfuse, view, state["start"], state["end"]) for view in views)
    save = partial(save_state, folder, state)
    save()
    with console.progress("Exporting", total) as done:
        for name, read in zip(FILES, (observations, scores), strict=True):
            export_file(folder / name, state[name], read, save, done)


# %% 4. Delete only what the files hold
#
# A deletion cannot be taken back. A trace may go when its newest observation is older
# than you said, and all that is stored of it now is in the files as it is stored now. What
# has grown, changed or been scored since the export stays.

Versions = dict[str, set[tuple[str, str]]]  # by trace: id and last change of each row


def by_trace(rows: Iterable[Row]) -> tuple[Versions, dict[str, datetime]]:
    """Return the versions of each trace's rows, and when its newest observation ended."""
    versions: Versions = defaultdict(set)
    newest: dict[str, datetime] = {}
    for row in rows:
        if "startTime" in row:
            trace = row["traceId"]
            ended = datetime.fromisoformat(row["endTime"] or row["startTime"])
            newest[trace] = max(ended, newest.get(trace, ended))
        else:  # a score; one of a session belongs to no trace
            subject = row["subject"]
            trace = subject["id"] if subject["kind"] == "trace" else subject.get("traceId", "")
        versions[trace].add((row["id"], row["updatedAt"]))
    return versions, newest


def stored_rows(langfuse: Langfuse, traces: list[str]) -> Iterator[Row]:
    """Yield all observations and scores of these traces as they are stored now."""
    one_of = {"type": "stringOptions", "column": "traceId", "operator": "any of", "value": traces}
    observations = partial(
        langfuse.api.observations.get_many,
        filter=json.dumps([one_of]),
        fields="core,time",
        limit=1000,
    )
    ids = ",".join(traces)
    scores = partial(langfuse.api.scores.get_many, trace_id=ids, fields="subject", limit=100)
    for read in (observations, scores):
        for rows, _ in pages_of(read):
            yield from (json.loads(row.json()) for row in rows)


def delete_old(
    langfuse: Langfuse, folder: Path, before: datetime, *, is_sure: bool
) -> tuple[list[str], int]:
    """Return the traces that may go, and how many as old must stay; delete where `is_sure`."""
    exported, newest = by_trace(row for name in FILES for row in rows_in(folder / name))
    old = [trace for trace, ended in newest.items() if ended < before]
    gone: list[str] = []
    kept = 0
    with console.progress("Deleting" if is_sure else "Comparing", len(old)) as done:
        for first in range(0, len(old), TRACES_AT_ONCE):
            some = old[first : first + TRACES_AT_ONCE]
            stored, newest = by_trace(stored_rows(langfuse, some))
            may_go = [t for t in newest if stored[t] <= exported[t]]
            if is_sure and may_go:
                langfuse.api.trace.delete_multiple(trace_ids=may_go)
            gone, kept = gone + may_go, kept + len(newest) - len(may_go)
            for _ in some:
                done()
    return gone, kept


def still_stored(langfuse: Langfuse, traces: list[str]) -> int:
    """Return how many of these traces can be read.

    In Langfuse: look for one of the ids under Traces. Langfuse Cloud accepts a deletion at
    once and carries it out in the background.
    """
    parts = range(0, len(traces), TRACES_AT_ONCE)
    some = (stored_rows(langfuse, traces[first : first + TRACES_AT_ONCE]) for first in parts)
    return sum(len(by_trace(rows)[0]) for rows in some)


def show_deletion(langfuse: Langfuse, folder: Path, days: int, *, is_sure: bool) -> None:
    """Print which traces may go and, where they were deleted, whether they are gone."""
    show_section(f"Traces older than {days} days")
    before = datetime.now(UTC) - timedelta(days=days)
    gone, kept = delete_old(langfuse, folder, before, is_sure=is_sure)
    if kept:
        show_result("stay", f"{kept}, not exported as they are now: they have grown or changed")
    if not is_sure:
        show_result("would be deleted", f"{len(gone)}; add --yes to delete them")
        return
    with console.waiting("Looking whether they are gone"):
        left = poll(partial(still_stored, langfuse, gone), until=lambda count: count == 0)
    show_result("deleted", f"{len(gone)}, of which {left} can still be read")
    if left:
        show_line("  Langfuse Cloud deletes in the background: look again in some minutes.")


class Arguments(argparse.ArgumentParser):
    """A parser that says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        """End the program with status 2."""
        fail(f"{message[:1].upper()}{message[1:]}. --help shows how to run it.", 2)


def moment(text: str) -> datetime:
    """`moment("2026-11-01") -> 2026-11-01 00:00 UTC`; a time without an offset is UTC, too."""
    time = datetime.fromisoformat(text)
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)


def read_arguments() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = Arguments(prog="python -m recipes.export_traces", description=__doc__.split("\n")[0])
    default = (TOP / read_settings()["LOCAL_LANGFUSE_DB"].value).with_name("export")
    parser.add_argument("--from", dest="start", type=moment, help="a day or a time, ISO 8601")
    parser.add_argument("--to", dest="end", type=moment, help="where it ends, itself left out")
    parser.add_argument("--folder", type=Path, default=default, help="where the files go")
    parser.add_argument("--page-size", type=int, default=500, metavar="ROWS")
    parser.add_argument("--delete-older-than", type=int, metavar="DAYS")
    parser.add_argument("--yes", action="store_true", help="delete, do not only count")
    asked = parser.parse_args()
    if asked.delete_older_than not in (None, *range(1, 36_501)):
        parser.error("--delete-older-than must be from 1 to 36500 days")
    if asked.yes and not asked.delete_older_than:
        parser.error("--yes needs --delete-older-than")
    if not 1 <= asked.page_size <= 1000:
        parser.error("--page-size must be from 1 to 1000 rows")
    return asked


def export_and_delete(langfuse: Langfuse, asked: argparse.Namespace) -> None:
    """Do what the command line asks for, and print what there is then."""
    folder: Path = asked.folder
    project = langfuse.api.projects.get().data[0].id
    with only_one(folder):
        state = open_state(folder, project, asked.start, asked.end)
        show_section(f"Period {state['start']} to {state['end']}")
        if all(state[name]["is_done"] for name in FILES):
            show_line("  The export is finished; nothing is left to do.")
        else:
            export(langfuse, folder, state, asked.page_size)
        for name in FILES:
            show_result(name, f"{sum(1 for _ in rows_in(folder / name))} lines")
        rows = rows_in(folder / FILES[0])
        cut = {key for row in rows for key in long_keys(row["metadata"]) if "," in key}
        if cut:
            show_result("cut to 200", f"metadata with a comma in its key: {sorted(cut)}")
        if asked.delete_older_than:
            show_deletion(langfuse, folder, asked.delete_older_than, is_sure=asked.yes)
        show_result("written", folder.resolve())


def main() -> None:
    """Read what is asked for, do it, and say in one line what stopped it."""
    asked = read_arguments()
    langfuse = connect()
    if not tracing_is_on():
        show_line("There is nothing to read while tracing is off.")
        return
    try:
        export_and_delete(langfuse, asked)
    except ExportError as error:
        fail(str(error), 2)
    except OSError as error:
        fail(f"{asked.folder} cannot be used ({error.strerror}): choose another --folder.", 1)
    except (httpx.HTTPError, ApiError) as error:
        cause = getattr(error, "status_code", None) or error
        fail(f"Langfuse did not answer ({cause}). Run the same command again to go on.", 1)


if __name__ == "__main__":
    main()
