"""The export is killed, goes on, and holds everything once; what is deleted is in it."""

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from conftest import KEYS, TOP, Desk, free_port, stored_observations
from recording_proxy import Proxy, Sent, proxy_to

from common.readback import FIELDS
from recipes import export_traces

MODULE = ("-m", "recipes.export_traces")
REFUSING = str(Path(__file__).parent / "refuse_sockets")
DAYS = 7
PATIENCE = 60  # seconds, on a machine that is busy
LISTS = ("/api/public/v2/observations", "/api/public/v3/scores")
METADATA = {"long.key": "metadata " * 40, "exactly": "y" * 200, "a,comma": "z" * 300}
Row = dict[str, Any]


def put_trace(
    client: httpx.Client, number: int, *, ended: timedelta, steps: int = 1, first: int = 1
) -> str:
    """Store a trace whose observations all ended so long ago; return its id."""
    trace, end = f"{number:032x}", int((datetime.now(UTC) - ended).timestamp() * 1e9)
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
    texts = [(folder / name).read_text("utf-8") for name in export_traces.FILES]
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
    """One folder through its life: killed twice, finished, compared, emptied."""

    desk: Desk
    folder: Path
    proxy: Proxy
    client: httpx.Client
    ran: dict[str, subprocess.CompletedProcess[str]] = field(default_factory=dict)
    state_when_killed: list[Row] = field(default_factory=list)
    stored: tuple[list[Row], list[Row]] = ([], [])
    written: tuple[list[Row], list[Row]] = ([], [])
    files_touched: bool = False
    left: dict[str, set[str]] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        keys = {"LANGFUSE_PUBLIC_KEY": KEYS[0], "LANGFUSE_SECRET_KEY": KEYS[1]}
        return {**keys, "LANGFUSE_BASE_URL": self.proxy.url, "LANGFUSE_TIMEOUT": "20"}

    def run(self, step: str, *options: str) -> None:
        command = (*MODULE, "--folder", str(self.folder), "--page-size", "7", *options)
        self.ran[step] = self.desk.run(*command, **self.environment())
        self.left[step] = {row["traceId"] for row in stored_observations(self.client)}

    def kill_at(self, path: str, count: int, meanwhile: Callable[[], object]) -> None:
        """Start the export, and kill it while it waits for its n-th page of a list."""
        reached, release = threading.Event(), threading.Event()

        def stop() -> None:
            reached.set()
            release.wait(PATIENCE)

        self.proxy.before = at(path, count, stop)
        with subprocess.Popen(
            [sys.executable, *MODULE, "--folder", str(self.folder), "--page-size", "7"],
            cwd=TOP,
            env=self.desk.environment(**self.environment()),
            stdout=subprocess.DEVNULL,
        ) as export:
            try:
                assert reached.wait(PATIENCE), "the export never asked for that page"
                with (
                    pytest.raises(export_traces.ExportError, match="Another export is at work"),
                    export_traces.only_one(self.folder),
                ):
                    pass
                meanwhile()
            finally:
                export.kill()
        assert export.returncode == -signal.SIGKILL
        self.proxy.before = lambda _: None
        release.set()
        self.state_when_killed.append(json.loads((self.folder / "export.json").read_text()))
        for name in export_traces.FILES:
            with (self.folder / name).open("ab") as file:  # what a kill inside a page leaves
                file.write(b'{"id": "a whole line"}\n{"id": "half a li')


def at(path: str, count: int, action: Callable[[], object]) -> Callable[[Sent], None]:
    """Return a hook that acts at the n-th request for this list."""
    seen = 0

    def hook(sent: Sent) -> None:
        nonlocal seen
        seen += sent.path.startswith(path)
        if sent.path.startswith(path) and seen == count:
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
    return (datetime.now(UTC) - timedelta(**time)).isoformat()


def change(client: httpx.Client) -> None:
    """Let traces grow that were exported; none of it is recent."""
    put_trace(client, GROWN, ended=day(DAYS + 1), first=3)
    put_score(client, traceId=f"{SCORED:032x}", value=0, timestamp=ago(days=DAYS + 1))
    put_score(client, id=f"of-{RESCORED}", traceId=f"{RESCORED:032x}", value=0)


@dataclass
class Beside:
    """Runs that need nothing of the story: each has a desk of its own."""

    desk: Desk
    ran: dict[str, subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Iterator[Future[Beside]]:
    desk = Desk(tmp_path_factory.mktemp("beside"), vocabulary)
    nowhere = f"http://127.0.0.1:{free_port()}"
    keys = {"LANGFUSE_PUBLIC_KEY": KEYS[0], "LANGFUSE_SECRET_KEY": KEYS[1]}
    off = {
        "LANGFUSE_TRACING_ENABLED": "false",
        "LOCAL_LANGFUSE_DB": str(desk.folder / "off" / "langfuse.db"),
        "PYTHONPATH": REFUSING,
        "REFUSE_SOCKETS": "all",
        "REFUSED_SOCKETS_FILE": str(desk.folder / "refused"),
    }

    def run() -> Beside:
        return Beside(
            desk,
            {
                "empty": desk.run(*MODULE),
                "another period": desk.run(*MODULE, "--from", "2025-01-01"),
                "off": desk.run(*MODULE, **off),
                "down": desk.run(*MODULE, LANGFUSE_BASE_URL=nowhere, **keys),
            },
        )

    with ThreadPoolExecutor(1) as pool:  # beside the story, which waits for its own processes
        yield pool.submit(run)


@pytest.fixture(scope="module")
def story(
    tmp_path_factory: pytest.TempPathFactory, vocabulary: Path, beside: Future[Beside]
) -> Iterator[Story]:
    assert not beside.cancelled()  # it has begun
    desk = Desk(tmp_path_factory.mktemp("desk"), vocabulary)
    with desk.serving() as client, proxy_to(str(client.base_url)) as proxy:
        story = Story(desk, tmp_path_factory.mktemp("out") / "archive", proxy, client)
        fill(client)
        # What arrives meanwhile is the newest, so the round that is under way cannot see it.
        story.kill_at(LISTS[0], 5, lambda: put_trace(client, LATE, ended=timedelta(seconds=30)))
        scored = {"traceId": f"{LATE:032x}", "value": 1, "timestamp": ago(seconds=30)}
        story.kill_at(LISTS[1], 3, lambda: put_score(client, **scored))
        story.run("export")
        story.stored, story.written = everything(client), written(story.folder)
        before = [(story.folder / name).stat().st_mtime_ns for name in export_traces.FILES]
        change(client)
        story.run("dry", "--delete-older-than", str(DAYS))
        after = [(story.folder / name).stat().st_mtime_ns for name in export_traces.FILES]
        story.files_touched = before != after
        story.run("deleted", "--delete-older-than", str(DAYS), "--yes")
        yield story


def test_holds_everything_once_though_it_was_killed(story: Story) -> None:
    first, second = story.state_when_killed
    assert first["start"] == second["start"]
    assert first["end"] == second["end"]
    observations, scores = export_traces.FILES
    assert 0 < first[observations]["size"] < second[observations]["size"]
    assert not first[observations]["is_done"]
    assert second[observations]["is_done"]
    assert second[scores]["size"] > 0
    assert not second[scores]["is_done"]
    for cursor in (first[observations]["cursor"], second[scores]["cursor"]):
        asked = [sent for sent in story.proxy.sent if f"cursor={quote(cursor)}" in sent.path]
        assert len(asked) > 1, "asked for before the kill, and again after it"

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
    # A list of keys has commas between them, so this value cannot be had, which is said.
    assert row["metadata"]["a,comma"] == "z" * 200
    assert "['a,comma']" in story.ran["export"].stdout


def test_a_finished_export_writes_nothing(story: Story) -> None:
    assert "54 lines" in story.ran["export"].stdout
    assert "finished" not in story.ran["export"].stdout
    assert "The export is finished" in story.ran["dry"].stdout
    assert not story.files_touched


def test_deletes_only_what_is_old_and_exported_as_it_is(story: Story) -> None:
    for step in ("dry", "deleted"):
        assert (story.ran[step].returncode, story.ran[step].stderr) == (0, "")
    stays = {GROWN, SCORED, RESCORED, GROWING, JUST_YOUNGER, LATE, *RECENT}
    goes = {OLD, JUST_OLDER}
    assert story.left["dry"] == {f"{number:032x}" for number in stays | goes}
    assert re.search(r"would be deleted +2;", story.ran["dry"].stdout)
    assert re.search(r"stay +3,", story.ran["dry"].stdout)
    assert story.left["deleted"] == {f"{number:032x}" for number in stays}
    assert re.search(r"deleted +2, of which 0 can still be read", story.ran["deleted"].stdout)
    scores = everything(story.client)[1]
    assert not any(row["id"] == f"of-{OLD}" for row in scores)
    assert any(row["subject"]["kind"] == "session" for row in scores)


def test_refuses_a_folder_of_another_project(tmp_path: Path) -> None:
    state = export_traces.open_state(tmp_path, "ours", None, None)
    export_traces.save_state(tmp_path, state)
    assert export_traces.open_state(tmp_path, "ours", None, None) == state
    with pytest.raises(export_traces.ExportError, match="of project ours"):
        export_traces.open_state(tmp_path, "theirs", None, None)


def test_refuses_a_file_that_was_shortened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    with pytest.raises(export_traces.ExportError, match="shorter"):
        export_traces.cut_back(tmp_path / "file", 6)
    export_traces.cut_back(tmp_path / "file", 4)
    assert (tmp_path / "file").read_bytes() == b"1234"


@pytest.mark.parametrize(
    "options",
    [
        "--delete-older-than 0",
        "--delete-older-than -3",
        "--delete-older-than 1.5",
        "--delete-older-than 99999999",
        "--yes",
        "--from yesterday",
        "--page-size 0",
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


def test_refuses_a_period_that_is_none(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    for start, end in ((now, now), (now, now - day(1)), (now, now + day(1))):
        with pytest.raises(export_traces.ExportError, match="--from"):
            export_traces.open_state(tmp_path, "ours", start, end)


def test_runs_on_an_empty_stand_in(beside: Future[Beside]) -> None:
    desk, ran = beside.result().desk, beside.result().ran["empty"]
    assert (ran.returncode, ran.stderr) == (0, "")
    assert (desk.folder / "export" / "scores.jsonl").read_bytes() == b""
    assert ran.stdout.split()[-1] == str(desk.folder / "export")


def test_refuses_another_period_in_one_line(beside: Future[Beside]) -> None:
    ran = beside.result().ran["another period"]
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1, ran.stderr
    assert "choose another --folder" in ran.stderr


def test_tracing_off_opens_no_socket(beside: Future[Beside]) -> None:
    desk, ran = beside.result().desk, beside.result().ran["off"]
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "nothing to read" in ran.stdout
    assert not (desk.folder / "refused").exists()
    assert not (desk.folder / "off").exists()


def test_says_that_langfuse_did_not_answer(beside: Future[Beside]) -> None:
    ran = beside.result().ran["down"]
    assert ran.returncode == 1
    assert ran.stderr.count("\n") == 1, ran.stderr
    assert "Run the same command again" in ran.stderr
