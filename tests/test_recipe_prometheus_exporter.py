"""The exporter counts what is stored: all of it, once, whatever happens to it or to Langfuse."""

import json
import re
import socket
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from conftest import KEYS, TOP, Desk, free_port, stored_observations
from langfuse.api import LangfuseAPI
from langfuse.api.core import ApiError
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as read_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families

from common.readback import poll
from common.settings import read_settings
from local_langfuse import start
from recipes import prometheus_exporter
from recipes.prometheus_exporter import (
    BUCKETS,
    Exporter,
    State,
    count_observation,
    load_state,
    main,
    read_pages,
    save_state,
    take_round,
)

RECIPE = ("-m", "recipes.prometheus_exporter")
Sums = defaultdict[tuple[str, ...], Decimal]
Numbers = dict[tuple[str, ...], float]  # a sample's name and its label values, by label name
HOSTILE = 'a"} 9\nlangfuse_calls_total{model="b\\'  # a model's name, as a trace may have it


@contextmanager
def serving(desk: Desk) -> Iterator[httpx.Client]:
    """Serve the desk's database on its port, as `desk.serving` does, without a process."""
    running = start(desk.db, desk.port)
    try:
        with httpx.Client(base_url=running.base_url, auth=KEYS, trust_env=False) as client:
            yield client
    finally:
        running.stop()


def span(
    number: int,
    *,
    ended_ago: float = 60,
    seconds: float = 1.5,
    kind: str = "generation",
    model: str = "",
    level: str = "DEFAULT",
    usage: dict[str, int] | None = None,
    cost: dict[str, float] | None = None,
    first_token: float | None = None,
) -> dict[str, Any]:
    """Return an OTLP span; all times are seconds, usage is tokens, cost is USD."""
    end = datetime.now(UTC) - timedelta(seconds=ended_ago)
    start = end - timedelta(seconds=seconds)
    own = {"type": kind, "model.name": model, "level": level}
    own |= {"usage_details": json.dumps(usage or {}), "cost_details": json.dumps(cost or {})}
    if first_token:
        own["completion_start_time"] = (start + timedelta(seconds=first_token)).isoformat()
    return {
        "traceId": f"{number:032x}",
        "spanId": f"{number:016x}",
        "name": "write-answer",
        "startTimeUnixNano": f"{start.timestamp():.6f}000".replace(".", ""),
        "endTimeUnixNano": f"{end.timestamp():.6f}000".replace(".", ""),
        "attributes": [
            {"key": f"langfuse.observation.{key}", "value": {"stringValue": text}}
            for key, text in own.items()
        ],
    }


def send(client: httpx.Client, *spans: dict[str, Any]) -> None:
    body = {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {}, "spans": spans}]}]}
    client.post("/api/public/otel/v1/traces", json=body).raise_for_status()


def rate(client: httpx.Client, *scores: dict[str, Any]) -> None:
    body = [{"traceId": f"{1:032x}", **score} for score in scores]
    client.post("/api/public/scores", json=body).raise_for_status()


def stored_scores(client: httpx.Client) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    query: dict[str, Any] = {"limit": 100}
    while True:
        page = client.get("/api/public/v3/scores", params=query).raise_for_status().json()
        rows += page["data"]
        if "cursor" not in page["meta"]:
            return rows
        query["cursor"] = page["meta"]["cursor"]


def read(text: str, parse: Any = text_string_to_metric_families) -> Numbers:
    """Return every sample but the exporter's own, by prometheus_client's parser."""
    found: Numbers = {}
    for family in parse(text[text.index("# HELP") :]):
        for sample in family.samples:
            key = (sample.name, *(value for _, value in sorted(sample.labels.items())))
            assert key not in found, key
            found[key] = sample.value
    return {key: value for key, value in found.items() if "exporter" not in key[0]}


def expected(client: httpx.Client, *without: int) -> Numbers:
    """Add up what the API says is stored, but for the spans with these numbers."""
    left_out = {f"{number:016x}" for number in without}
    sums: Sums = defaultdict(Decimal)
    for row in stored_observations(client):
        if row["endTime"] and row["id"] not in left_out:
            model, kind = row["model"], row["type"].lower()
            sums["langfuse_calls_total", model, kind] += 1
            sums["langfuse_errors_total", model, kind] += row["level"] == "ERROR"
            add_histogram(sums, "langfuse_latency_seconds", (model, kind), row["latency"] or 0)
            if (first := row["timeToFirstToken"]) is not None:
                add_histogram(sums, "langfuse_time_to_first_token_seconds", (model,), first)
            usage = row["usageDetails"]
            for bucket in usage.keys() - ({"total"} if len(usage) > 1 else set()):
                sums["langfuse_tokens_total", bucket, model] += usage[bucket]
            if "total" in row["costDetails"]:
                cost = Decimal(str(row["costDetails"]["total"]))
                sums["langfuse_cost_usd_total", model] += cost
            elif kind in ("generation", "embedding") and (usage or row["level"] != "ERROR"):
                sums["langfuse_calls_without_cost_total", model] += 1
    return {key: float(value) for key, value in (*sums.items(), *summed_scores(client).items())}


def summed_scores(client: httpx.Client) -> Sums:
    sums: Sums = defaultdict(Decimal)
    for score in stored_scores(client):
        if score["dataType"] in ("NUMERIC", "BOOLEAN"):
            sums["langfuse_scores_total", score["name"]] += 1
            sums["langfuse_score_sum", score["name"]] += Decimal(str(float(score["value"])))
    return sums


def add_histogram(sums: Sums, name: str, labels: tuple[str, ...], value: float) -> None:
    for bound in BUCKETS:
        sums[f"{name}_bucket", bound, *labels] += value <= float(bound)
    sums[f"{name}_count", *labels] += 1
    sums[f"{name}_sum", *labels] += Decimal(str(value))


def odd_spans() -> list[dict[str, Any]]:
    """Return spans of all kinds, which ended a minute ago: not before the import, much later."""
    return [
        span(1, model="gpt-4o", usage={"input": 9, "input_cached_tokens": 4}, first_token=0.5),
        span(2, model=HOSTILE, usage={"total": 7}),
        span(3, model="gpt-4o", level="ERROR"),
        span(4, model="own", level="ERROR", usage={"input": 3}),
        span(5, model="own", cost={"total": 0.1}),
        span(6, model="own", cost={"total": 0.2}),
        span(7, seconds=100, kind="embedding", model="own", usage={"i": 1}),
        span(8, seconds=0, kind="event"),
        span(10, ended_ago=7200),  # in the first round only
    ]


RATINGS: list[dict[str, Any]] = [
    *({"name": "user-rating", "value": n / 10, "id": f"rating-{n}"} for n in range(4)),
    {"name": "resolved", "value": 1, "dataType": "BOOLEAN", "id": "yes"},
    {"name": "resolved", "value": 0, "dataType": "BOOLEAN", "id": "no"},
    {"name": "mood", "value": "calm", "dataType": "CATEGORICAL", "id": "calm"},
]


def state_of(desk: Desk, host: str = "nobody.test", key: str = KEYS[0]) -> Path:
    return desk.db.with_name(f"prometheus-{host}-{key}.json")


@dataclass
class Shop:
    """What these spans and ratings stored, and the first round over it."""

    desk: Desk
    client: httpx.Client
    ran: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Iterator[Shop]:
    desk = Desk(tmp_path_factory.mktemp("shop"), vocabulary)
    with serving(desk) as client:
        send(client, *odd_spans())
        rate(client, *RATINGS)
        yield Shop(desk, client, desk.run(*RECIPE, "--once"))


def api(client: httpx.Client) -> Any:
    """Return what the recipe uses of a Langfuse client, over this connection."""
    return SimpleNamespace(api=LangfuseAPI(base_url=str(client.base_url), httpx_client=client))


@contextmanager
def exporting(desk: Desk) -> Iterator[httpx.Client]:
    """Run the exporter until it is killed, and yield a client of its metrics."""
    keys = {"LANGFUSE_PUBLIC_KEY": KEYS[0], "LANGFUSE_SECRET_KEY": KEYS[1]}
    url = {"LANGFUSE_BASE_URL": f"http://127.0.0.1:{desk.port}"}
    server = subprocess.Popen(
        [sys.executable, *RECIPE, "--port", "0", "--every", "0.1"],
        cwd=TOP,
        env=desk.environment(**keys, **url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    try:
        line, found = "-", None
        while line and not found:
            line = server.stdout.readline()
            found = re.search(r"(http://127.0.0.1:\d+)/metrics", line)
        assert found, server.communicate()
        with httpx.Client(base_url=found[1], trust_env=False) as client:
            yield client
    finally:
        server.kill()
        _, said = server.communicate(timeout=60)
    assert (server.returncode, said) == (-9, "")


def scraped(exporter: httpx.Client) -> Numbers:
    return read(exporter.get("/metrics").raise_for_status().text)


def agrees(exporter: httpx.Client, wanted: Numbers) -> None:
    """Wait for the round that counts it all; a number too many stays, and is found."""
    assert poll(lambda: scraped(exporter), until=lambda found: found == wanted) == wanted


def up(exporter: httpx.Client) -> float:
    found = re.search(r"^langfuse_exporter_up (\S+)$", exporter.get("/").text, re.MULTILINE)
    assert found
    return float(found[1])


def test_counts_exactly_what_is_stored(shop: Shop) -> None:
    assert (shop.ran.returncode, shop.ran.stderr) == (0, "")
    assert shop.ran.stdout.startswith("# HELP "), "nothing but metrics: a file can be made of it"
    counted = read(shop.ran.stdout)
    assert counted == expected(shop.client)
    assert counted["langfuse_scores_total", "user-rating"] == 4
    assert counted["langfuse_cost_usd_total", "own"] == 0.3, "not 0.30000000000000004"
    assert counted["langfuse_tokens_total", "total", HOSTILE] == 7
    assert counted["langfuse_calls_without_cost_total", "own"] == 2
    assert ("langfuse_calls_without_cost_total", "gpt-4o") not in counted, "it was refused"
    assert ("langfuse_scores_total", "mood") not in counted


def test_loses_nothing_and_counts_nothing_twice(desk: Desk) -> None:
    path = state_of(desk, f"127.0.0.1_{desk.port}")
    with serving(desk) as client:
        send(client, span(1))
        rate(client, {"name": "resolved", "value": 0, "dataType": "BOOLEAN", "id": "no"})
        assert Exporter(path).try_round(api(client)) == ""
        before = expected(client)
    with exporting(desk) as exporter:
        assert poll(lambda: up(exporter), until=lambda up: up == 0) == 0
        assert scraped(exporter) == before, "shown while Langfuse is down"
        with serving(desk) as client:
            late, too_late = span(20, ended_ago=3500), span(21, ended_ago=7000)
            runs = {**span(22, ended_ago=-0.01), "endTimeUnixNano": "0"}
            long = span(23, seconds=3 * 3600, ended_ago=0, kind="agent")  # began before the window
            send(client, late, too_late, runs, long)
            rate(client, {"name": "resolved", "value": 1, "dataType": "BOOLEAN", "id": "no"})
            wanted = expected(client, 21)
            assert wanted["langfuse_score_sum", "resolved"] == 1
            assert wanted["langfuse_calls_total", "", "generation"] == 2, "1 and 20"
            agrees(exporter, wanted)
            assert up(exporter) == 1
            send(client, span(22, seconds=5, ended_ago=0))
            agrees(exporter, expected(client, 21))
            header = {"Accept": "application/openmetrics-text; version=1.0.0"}
            answer = exporter.get("/metrics", headers=header)
            assert answer.headers["content-type"].startswith("application/openmetrics-text")
            assert read(answer.text, read_openmetrics) == expected(client, 21)
        assert poll(lambda: up(exporter), until=lambda up: up == 0) == 0
    with serving(desk) as client:
        send(client, span(24))
        again = Exporter(path)
        assert again.try_round(api(client)) == ""
        assert read(generate(again)) == expected(client, 21)


# The functions by themselves


Program = Callable[..., int]


@pytest.fixture
def program(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Return the program as a function of its Langfuse client and its options."""

    def run(langfuse: Any, *options: str, key: str = KEYS[0]) -> int:
        monkeypatch.setattr(sys, "argv", ["exporter", *options])
        monkeypatch.setattr(prometheus_exporter, "connect", lambda **_: None)
        monkeypatch.setattr(prometheus_exporter, "Langfuse", lambda: langfuse)
        monkeypatch.setenv("LANGFUSE_PUBLIC_KEY", key)
        monkeypatch.setenv("LANGFUSE_SECRET_KEY", KEYS[1])
        monkeypatch.setenv("LANGFUSE_BASE_URL", "http://nobody.test")
        monkeypatch.setenv("LOCAL_LANGFUSE_DB", str(desk.db))
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return run


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--every soon", "argument --every: invalid float value: 'soon'"),
        ("--port many", "argument --port: invalid int value: 'many'"),
        ("--twice", "unrecognized arguments: --twice"),
    ],
)
def test_a_wrong_option_is_said_in_one_line(
    given: str, said: str, program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program(None, *given.split()) == 2
    assert capsys.readouterr().err == f"{said}; --help shows the options.\n"


def test_a_damaged_file_is_named_and_left_alone(
    desk: Desk, program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    state_of(desk).write_text('{"since": 5')
    assert program(None, "--once") == 2
    assert re.fullmatch(r".*nobody\.test.* is damaged, .*\n", capsys.readouterr().err)
    assert state_of(desk).read_text() == '{"since": 5'


def test_each_database_and_each_project_has_its_own_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def path(**env: str) -> Path:
        with monkeypatch.context() as patched:
            for name, value in env.items():
                patched.setenv(name, value)
            read_settings.cache_clear()
            return prometheus_exporter.state_path()

    keys = {"LANGFUSE_PUBLIC_KEY": "pk-lf-a", "LANGFUSE_SECRET_KEY": "sk-lf-a"}
    paths = [
        path(),
        path(LOCAL_LANGFUSE_DB=".local_langfuse/other.db"),
        path(**keys),
        path(**keys, LANGFUSE_BASE_URL="http://127.0.0.1:3000"),
        path(**{**keys, "LANGFUSE_PUBLIC_KEY": "pk-lf-b"}),
    ]
    assert len({*paths}) == len(paths)
    assert {each.parent for each in paths} == {TOP / ".local_langfuse"}


@pytest.mark.parametrize("is_taken", [True, False])
def test_a_port_that_cannot_be_used_is_said(
    is_taken: bool, program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1] if is_taken else 65536
        assert program(None, "--port", str(port)) == 2
    assert re.fullmatch(r"Cannot start \(.*\): .* --port\.\n", capsys.readouterr().err)


def test_without_langfuse_the_last_numbers_are_shown(
    desk: Desk, program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    save_state(state_of(desk), counted_once())
    with httpx.Client(base_url=f"http://127.0.0.1:{free_port()}", trust_env=False) as nobody:
        assert program(api(nobody), "--once") == 1
    said = capsys.readouterr()
    assert re.fullmatch(
        r"Nothing is counted in this round: .* refused \(http://nobody\.test\)\n", said.err
    )
    assert read(said.out)["langfuse_calls_total", "m", "generation"] == 1
    assert "langfuse_exporter_up 0.0\n" in said.out


def test_each_project_has_its_own_numbers(
    desk: Desk, shop: Shop, program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    save_state(state_of(desk), counted_once())
    assert program(api(shop.client), "--once", key="pk-lf-other") == 0
    assert read(capsys.readouterr().out) == expected(shop.client)
    assert read(generate(Exporter(state_of(desk, key="pk-lf-other")))) == expected(shop.client)
    assert load_state(state_of(desk)) == counted_once(load_state(state_of(desk)))


def counted_once(like: State | None = None) -> State:
    state = load_state(Path("nowhere"))
    count_observation(state, node(1))
    if like:  # times are those of the moment
        state.since, state.ended = like.since, like.ended
    return state


def node(number: int, model: str = "m") -> Any:
    return SimpleNamespace(
        trace_id="t",
        id=str(number),
        end_time=datetime.now(UTC) - timedelta(minutes=1),
        type="GENERATION",
        level="DEFAULT",
        model=model,
        latency=None,
        time_to_first_token=None,
        usage_details={"input": 1},
        cost_details={},
    )


@pytest.mark.parametrize(
    "broken",
    [
        lambda text: text[:-1],
        lambda text: text.replace('"since"', '"position"'),
        lambda text: json.dumps({**json.loads(text), "format": 2}),
        lambda text: text.replace('"0.05"', '"0.07"'),
        lambda _: "",
    ],
)
def test_a_state_that_is_not_ours_is_refused(broken: Any, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state.json"
    save_state(path, counted_once())
    assert load_state(path) == counted_once(load_state(path))
    path.write_text(broken(path.read_text()))
    with pytest.raises(ValueError, match=r"validation error|other buckets"):
        load_state(path)


class Killed(BaseException):
    """Ends a run where it is raised, as `kill -9` does: nothing catches it."""


@pytest.mark.parametrize("is_saved", [False, True])
def test_a_state_is_saved_in_one_step(
    is_saved: bool, shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, replace = tmp_path / "state.json", Path.replace

    def killed(source: Path, target: Path) -> None:
        if is_saved:
            replace(source, target)
        raise Killed

    exporter = Exporter(path)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(Killed):
            exporter.try_round(api(shop.client))
    assert path.exists() == is_saved
    again = Exporter(path)
    assert len(again.state.ended) == (len(odd_spans()) - 1 if is_saved else 0), "10 is too old"
    assert again.try_round(api(shop.client)) == ""
    assert read(generate(again)) == expected(shop.client)


def test_reads_page_after_page(shop: Shop) -> None:
    langfuse = api(shop.client).api
    found = [row.id for row in read_pages(langfuse.observations.get_many, limit=3)]
    assert sorted(found) == sorted(row["id"] for row in stored_observations(shop.client))
    rated = [row.id for row in read_pages(langfuse.scores.get_many, limit=3)]
    assert sorted(rated) == sorted(score["id"] for score in RATINGS)


def test_the_window_only_moves_on(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def take(state: State, minutes: int) -> State:
        monkeypatch.setattr(prometheus_exporter, "LATENESS", timedelta(minutes=minutes))
        return take_round(api(shop.client), state)

    first = take(load_state(Path("nowhere")), 30)
    assert first.since.microsecond == 0
    assert all(ended >= first.since for ended in first.ended.values())
    assert 0 < len(first.ended) < sum(map(int, first.numbers["langfuse_calls"].values()))
    again = take(first, 60)
    assert again.since == first.since
    assert again.numbers == first.numbers
    assert Counter(take(load_state(Path("nowhere")), 0).numbers) == Counter(first.numbers)


def test_a_round_that_fails_half_way_leaves_nothing_behind(shop: Shop) -> None:
    state = load_state(Path("nowhere"))
    before = state.model_copy(deep=True)
    langfuse = api(shop.client)
    langfuse.api = SimpleNamespace(
        observations=langfuse.api.observations, scores=SimpleNamespace(get_many=failing)
    )
    with pytest.raises(ApiError):
        take_round(langfuse, state)
    assert state == before


def failing(**_: Any) -> None:
    raise ApiError(status_code=500)


def test_what_cannot_be_saved_is_not_shown(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    exporter = Exporter(tmp_path / "file" / "state.json")
    problem = exporter.try_round(api(shop.client))
    assert problem.startswith("Nothing is counted in this round: [Errno")
    assert not exporter.is_up
    assert read(generate(exporter)) == {}


def test_says_what_langfuse_answered(shop: Shop, tmp_path: Path) -> None:
    auth = ("pk-lf-strange", "sk-lf-strange")
    with httpx.Client(base_url=shop.client.base_url, auth=auth, trust_env=False) as stranger:
        problem = Exporter(tmp_path / "state.json").try_round(api(stranger))
    assert problem == "Nothing is counted in this round: Langfuse answered 401"


def generate(exporter: Exporter) -> str:
    registry = CollectorRegistry()
    registry.register(exporter)
    return generate_latest(registry).decode()


def test_what_the_first_lines_ask_for_is_there(shop: Shop) -> None:
    asked = set(re.findall(r"langfuse_\w+", str(prometheus_exporter.__doc__)))
    assert len(asked) == 4
    assert asked <= set(re.findall(r"^(?:# TYPE )?(\w+)", shop.ran.stdout, re.MULTILINE))
