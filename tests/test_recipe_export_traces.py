"""The export is stopped twice, goes on, and holds everything once; what is deleted is in it."""

import json
import re
import signal
import subprocess
import sys
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch
from urllib.parse import quote

import httpx
import pytest
from conftest import KEYS, TOP, Desk, free_port, stored_observations
from langfuse.api.client import LangfuseAPI
from recording_proxy import Proxy, proxy_to

import local_langfuse
from common.readback import FIELDS
from recipes import export_traces

MODULE = ("-m", "recipes.export_traces")
SMALL_PAGES = "from recipes import export_traces as it; it.PAGE_SIZE = 7; it.main()"
FILES = (export_traces.OBSERVATIONS, export_traces.SCORES)
DAYS = 7
PATIENCE = 60  # seconds, on a machine that is busy
LISTS = ("/api/public/v2/observations", "/api/public/v3/scores")
METADATA = {"long.key": "metadata " * 40, "exactly": "y" * 200, "a,comma": "z" * 300}
Row = dict[str, Any]
Program = Callable[..., tuple[int, str]]


@cache
def made() -> datetime:
    """Return the moment at which the first data is made: all other times are relative to it.

    Not that of the import, from which a test may be far: some periods end minutes from it.
    """
    return datetime.now(UTC)


def put_trace(
    client: httpx.Client, number: int, *, ended: timedelta, steps: int = 1, first: int = 1
) -> str:
    """Store a trace whose observations all ended so long ago; return its id."""
    trace, end = f"{number:032x}", int((made() - ended).timestamp() * 1e9)
    attributes = {
        "langfuse.observation.input": 'Größe "42"?\nline\u2028separator',
        **{f"langfuse.observation.metadata.{key}": value for key, value in METADATA.items()},
        f"langfuse.observation.metadata.only.{number}": "x" * 201,
    }
    spans = [
        {
            "traceId": trace,
            "spanId": f"{step:016x}",  # the same ids in each trace
            "name": "answer-question",
            "startTimeUnixNano": str(end - step * 1_000_000),
            "endTimeUnixNano": str(end),
            "attributes": [
                {"key": key, "value": {"stringValue": value}} for key, value in attributes.items()
            ],
        }
        for step in range(first, first + steps)
    ]
    body = {"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}
    client.post("/api/public/otel/v1/traces", json=body).raise_for_status()
    return trace


def put_score(client: httpx.Client, **score: Any) -> None:
    client.post("/api/public/scores", json={"name": "rating", **score}).raise_for_status()


def everything(client: httpx.Client) -> tuple[list[Row], list[Row]]:
    """Return all observations and all scores as the API answers them, metadata whole."""
    keys = ["long.key", "exactly", *(f"only.{number}" for number in range(100))]
    asked: Row = {"fields": FIELDS, "limit": 1000, "expandMetadata": ",".join(keys)}
    observations = client.get(LISTS[0], params=asked).json()
    scores = client.get(LISTS[1], params={"fields": "details,subject,annotation", "limit": 100})
    assert "cursor" not in {**observations["meta"], **scores.json()["meta"]}, "all on one page"
    return comparable(observations["data"]), comparable(scores.json()["data"])


def written(folder: Path) -> tuple[list[Row], list[Row]]:
    texts = [(folder / name).read_text("utf-8") for name in FILES]
    observations, scores = ([json.loads(line) for line in text.split("\n")[:-1]] for text in texts)
    return comparable(observations), comparable(scores)


def comparable(rows: list[Row]) -> list[Row]:
    """Return rows in the order of their ids, their times as times: one second has many texts."""
    times = ("startTime", "endTime", "createdAt", "updatedAt", "timestamp")
    parsed = [
        {**row, **{k: datetime.fromisoformat(row[k]) for k in times if k in row}} for row in rows
    ]
    return sorted(parsed, key=lambda row: (row.get("traceId", ""), row["id"]))


@dataclass
class Story:
    """One folder through its life: killed, stopped, finished, compared, emptied."""

    desk: Desk
    folder: Path
    proxy: Proxy
    client: httpx.Client
    ran: dict[str, subprocess.CompletedProcess[str]] = field(default_factory=dict)
    state_when_stopped: list[Row] = field(default_factory=list)
    stored: tuple[list[Row], list[Row]] = ([], [])
    written: tuple[list[Row], list[Row]] = ([], [])
    left: dict[str, set[str]] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        keys = {"LANGFUSE_PUBLIC_KEY": KEYS[0], "LANGFUSE_SECRET_KEY": KEYS[1]}
        return {**keys, "LANGFUSE_BASE_URL": self.proxy.url, "LANGFUSE_TIMEOUT": "20"}

    def run(self, step: str, *options: str, **env: str) -> None:
        self.ran[step] = self.desk.run(*MODULE, "--folder", str(self.folder), *options, **env)
        self.left[step] = {row["traceId"] for row in stored_observations(self.client)}

    def kill_at(self, path: str, count: int, meanwhile: Callable[[], object]) -> None:
        """Start the export, and kill it while it waits for its n-th page of a list."""
        reached, release = threading.Event(), threading.Event()

        def stop() -> None:
            reached.set()
            release.wait(PATIENCE)

        hook = at(path, count, stop)
        self.proxy.before = lambda sent: hook(sent.path)
        with subprocess.Popen(
            [sys.executable, "-c", SMALL_PAGES, "--folder", str(self.folder)],
            cwd=TOP,
            env=self.desk.environment(**self.environment()),
            stdout=subprocess.DEVNULL,
        ) as export:
            try:
                assert reached.wait(PATIENCE), "the export never asked for that page"
                meanwhile()
            finally:
                export.kill()
        assert export.returncode == -signal.SIGKILL
        self.proxy.before = lambda _: None
        release.set()
        self.keep_state()

    def interrupt_at(self, path: str, count: int, meanwhile: Callable[[], object]) -> None:
        """Run the export in this process, and press Ctrl-C at its n-th page of a list."""

        def stop() -> None:
            meanwhile()
            raise KeyboardInterrupt

        hook = at(path, count, stop)
        hooks = {"request": [lambda request: hook(request.url.path)]}
        asked = Namespace(folder=self.folder, start=None, end=None, delete_older_than=None)
        with (
            httpx.Client(base_url=self.proxy.url, auth=KEYS, event_hooks=hooks) as client,
            patch.object(export_traces, "PAGE_SIZE", 7),
            pytest.raises(KeyboardInterrupt),
        ):
            export_traces.export_and_delete(reader(client), asked)
        self.keep_state()

    def keep_state(self) -> None:
        self.state_when_stopped.append(json.loads((self.folder / "export.json").read_text()))
        for name in FILES:
            with (self.folder / name).open("ab") as file:  # what a kill inside a page leaves
                file.write(b'{"id": "a whole line"}\n{"id": "half a li')


def at(path: str, count: int, action: Callable[[], object]) -> Callable[[str], None]:
    """Return a hook that acts at the n-th request for this list."""
    seen = 0

    def hook(asked: str) -> None:
        nonlocal seen
        seen += asked.startswith(path)
        if asked.startswith(path) and seen == count:
            action()

    return hook


def day(days: float, **more: float) -> timedelta:
    return timedelta(days=days, **more)


RECENT = range(10, 20)
OLD, JUST_OLDER, JUST_YOUNGER, GROWING, GROWN, SCORED, RESCORED, LATE = range(1, 9)


def fill(client: httpx.Client) -> None:
    for number in RECENT:
        trace = put_trace(client, number, ended=day(1, minutes=number), steps=4)
        for step in range(2):
            one = {"traceId": trace, "observationId": f"{step + 1:016x}"}
            put_score(client, **one, value=step, timestamp=ago(minutes=number))
    for number in (OLD, GROWING, GROWN, SCORED, RESCORED):
        put_trace(client, number, ended=day(DAYS + number), steps=2)
    put_trace(client, JUST_OLDER, ended=day(DAYS, minutes=10))
    put_trace(client, JUST_YOUNGER, ended=day(DAYS, minutes=-10))
    put_trace(client, GROWING, ended=day(1), first=3)
    for number in (OLD, RESCORED):
        put_score(client, id=f"of-{number}", traceId=f"{number:032x}", value=1, comment="größer")
    kinds = {"BOOLEAN": 1, "CATEGORICAL": "good", "TEXT": "well said"}
    for kind, value in kinds.items():
        put_score(client, traceId=trace, dataType=kind, value=value, timestamp=ago(hours=2))
    put_score(client, sessionId="chat-1", value=3, timestamp=ago(hours=3))


def ago(**time: float) -> str:
    return (made() - timedelta(**time)).isoformat()


def change(client: httpx.Client) -> None:
    """Let traces grow that were exported; none of it is recent."""
    put_trace(client, GROWN, ended=day(DAYS + 1), first=3)
    put_score(client, traceId=f"{SCORED:032x}", value=0, timestamp=ago(days=DAYS + 1))
    put_score(client, id=f"of-{RESCORED}", traceId=f"{RESCORED:032x}", value=0)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Iterator[Story]:
    desk = Desk(tmp_path_factory.mktemp("desk"), vocabulary)
    server = local_langfuse.start(desk.db)
    with (
        httpx.Client(base_url=server.base_url, auth=KEYS, trust_env=False) as client,
        proxy_to(server.base_url) as proxy,
    ):
        story = Story(desk, tmp_path_factory.mktemp("out") / "archive", proxy, client)
        fill(client)
        # What arrives meanwhile is the newest, so the round that is under way cannot see it.
        story.kill_at(LISTS[0], 5, lambda: put_trace(client, LATE, ended=timedelta(seconds=30)))
        scored = {"traceId": f"{LATE:032x}", "value": 1, "timestamp": ago(seconds=30)}
        story.interrupt_at(LISTS[1], 3, lambda: put_score(client, **scored))
        story.run("export", "--delete-older-than", str(DAYS), **story.environment())
        story.stored, story.written = everything(client), written(story.folder)
        change(client)
        # With no keys, so with the stand-in inside the process.
        story.run("delete", "--delete-older-than", str(DAYS), "--yes")
        yield story
    server.stop()


def test_holds_everything_once_though_it_was_killed(story: Story) -> None:
    first, second = story.state_when_stopped
    assert first["start"] == second["start"]
    assert first["end"] == second["end"]
    observations, scores = FILES
    assert 0 < first[observations]["size"] < second[observations]["size"]
    assert not first[observations]["is_done"]
    assert second[observations]["is_done"]
    assert second[scores]["size"] > 0
    assert not second[scores]["is_done"]
    for cursor, times in ((first[observations]["cursor"], 2), (second[scores]["cursor"], 1)):
        asked = [sent for sent in story.proxy.sent if f"cursor={quote(cursor)}" in sent.path]
        assert len(asked) >= times, "the killed run has asked, too; the other was stopped before"

    assert (story.ran["export"].returncode, story.ran["export"].stderr) == (0, "")
    assert [len(rows) for rows in story.written] == [len(rows) for rows in story.stored]
    assert len(story.stored[0]) == 53 + 1
    assert len(story.stored[1]) == 26 + 1
    assert story.written == story.stored
    ids = {row["traceId"] for row in story.written[0]}
    assert f"{LATE:032x}" in ids, "what arrived in front of the cursor"
    assert any(row["subject"].get("id") == f"{LATE:032x}" for row in story.written[1])


def test_each_row_is_whole(story: Story) -> None:
    row = story.written[0][0]
    assert row["input"] == 'Größe "42"?\nline\u2028separator'
    assert row["metadata"]["long.key"] == METADATA["long.key"]
    assert row["metadata"][f"only.{int(row['traceId'], 16)}"] == "x" * 201
    fields = {"usageDetails", "costDetails", "modelParameters", "tags", "promptName", "updatedAt"}
    assert fields <= row.keys()
    assert {"comment", "subject", "configId", "queueId"} <= story.written[1][0].keys()
    assert {row["dataType"] for row in story.written[1]} == {
        *("NUMERIC", "BOOLEAN", "CATEGORICAL", "TEXT")
    }
    assert row["metadata"]["a,comma"] == "z" * 200, "a list of keys has commas between them"


def test_a_finished_export_writes_nothing(story: Story) -> None:
    for step in ("export", "delete"):
        assert re.search(r"observations.jsonl +54 lines", story.ran[step].stdout)
        assert re.search(r"scores.jsonl +27 lines", story.ran[step].stdout)
        assert story.ran[step].stdout.split()[-1] == str(story.folder)
    assert written(story.folder) == story.written, "though more is stored since"


def test_deletes_only_what_is_old_and_exported_as_it_is(story: Story) -> None:
    for step in ("export", "delete"):
        assert (story.ran[step].returncode, story.ran[step].stderr) == (0, "")
    grown = {GROWN, SCORED, RESCORED}
    stays = {GROWING, JUST_YOUNGER, LATE, *RECENT, *grown}
    goes = {OLD, JUST_OLDER}
    assert story.left["export"] == {f"{number:032x}" for number in stays | goes}
    assert re.search(r"old traces +5 would be deleted; add --yes", story.ran["export"].stdout)
    assert re.search(r"kept +0 ", story.ran["export"].stdout)
    assert story.left["delete"] == {f"{number:032x}" for number in stays}
    assert re.search(r"old traces +2 handed to Langfuse to delete", story.ran["delete"].stdout)
    assert re.search(r"kept +3 ", story.ran["delete"].stdout)
    assert "This export is complete" in story.ran["delete"].stdout
    assert "This export is complete" not in story.ran["export"].stdout
    scores = everything(story.client)[1]
    assert not any(row["id"] == f"of-{OLD}" for row in scores)
    assert any(row["subject"]["kind"] == "session" for row in scores)


def test_refuses_another_period_in_one_line(story: Story, program: Program) -> None:
    status, said = program(story.client, "--folder", str(story.folder), "--from", "2025-01-01")
    assert status == 2
    assert said.count("\n") == 1, said
    assert "choose another --folder" in said


def test_holds_the_period_only(story: Story, tmp_path: Path) -> None:
    start, end = ago(days=1, minutes=14.5), ago(days=1, minutes=11.5)
    state = export_traces.open_state(tmp_path, "local", start, end)
    lines = export_traces.export_file(reader(story.client), tmp_path, state, FILES[0], lambda: None)
    rows = list(export_traces.rows_in(tmp_path / FILES[0]))
    assert (lines, len(rows)) == (12, 12)
    assert {int(row["traceId"], 16) for row in rows} == {12, 13, 14}


def reader(client: httpx.Client) -> Any:
    """Return what reads; the SDK keeps one `Langfuse` for a key as long as the process lives."""
    return SimpleNamespace(api=LangfuseAPI(base_url=str(client.base_url), httpx_client=client))


def test_refuses_a_folder_of_another_project(tmp_path: Path) -> None:
    state = export_traces.open_state(tmp_path / "new", "ours", None, None)
    assert export_traces.open_state(tmp_path / "new", "ours", None, None) == state
    with pytest.raises(FileExistsError, match="of project ours"):
        export_traces.open_state(tmp_path / "new", "theirs", None, None)


def test_refuses_a_file_that_was_shortened(tmp_path: Path) -> None:
    nobody: Any = None
    state = export_traces.open_state(tmp_path, "ours", None, None)
    state[FILES[0]]["size"] = 6
    (tmp_path / FILES[0]).write_bytes(b"12345")
    with pytest.raises(FileExistsError, match="shorter"):
        export_traces.export_file(nobody, tmp_path, state, FILES[0], lambda: None)
    assert (tmp_path / FILES[0]).read_bytes() == b"12345"


@pytest.mark.parametrize(
    "options",
    [
        *("--delete-older-than 0", "--delete-older-than -3", "--delete-older-than 1.5"),
        *("--delete-older-than 99999999", "--yes", "--from yesterday", "--to 2999-01-01"),
        "--folder /nowhere --delete-older-than 1 --yes",  # nothing to have looked at yet
        *("--from 2026-01-02 --to 2026-01-02", "--from 2026-01-02 --to 2026-01-01"),
    ],
)
def test_refuses_options_in_one_line(
    options: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["export_traces", *options.split()])
    with pytest.raises(SystemExit) as refused:
        export_traces.read_arguments()
    assert refused.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_understands_the_period(monkeypatch: pytest.MonkeyPatch) -> None:
    period = "--from 2026-01-01 --to 2026-01-02T01:00+01:00"
    monkeypatch.setattr(sys, "argv", ["export_traces", *period.split()])
    asked = export_traces.read_arguments()
    assert (asked.start, asked.end) == ("2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00")
    assert asked.folder == TOP / ".local_langfuse" / "export"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    """Return the program as a function that is stopped: its exit status and its stderr."""

    def run(client: httpx.Client, *options: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["export_traces", *options])
        monkeypatch.setattr(export_traces, "connect", lambda **_: None)
        monkeypatch.setattr(export_traces, "Langfuse", lambda: reader(client))
        with pytest.raises(SystemExit) as stopped:
            export_traces.main()
        return int(stopped.value.code or 0), capsys.readouterr().err

    return run


def test_says_that_langfuse_did_not_answer(tmp_path: Path, program: Program) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{free_port()}") as nowhere:
        status, said = program(nowhere, "--folder", str(tmp_path))
    assert status == 1
    assert said.count("\n") == 1, said
    assert "Run the same command again" in said
