"""`local_langfuse` under hostile input, sudden death, and several processes at once."""

import gzip
import http.client
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from conftest import client_of
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span
from starlette.datastructures import QueryParams

import local_langfuse
from local_langfuse import read
from local_langfuse.serving import listen
from local_langfuse.store import Store
from local_langfuse.wire import Query

TOP = Path(__file__).resolve().parents[1]
SPANS = "/api/public/otel/v1/traces"
OBSERVATIONS = "/api/public/v2/observations"
SCORES = "/api/public/scores"
READ_SCORES = "/api/public/v3/scores"
MODELS = "/api/public/models"
METRICS = "/api/public/v2/metrics"
PROMPTS = "/api/public/v2/prompts"
JSON = {"content-type": "application/json"}
PROTOBUF = {"content-type": "application/x-protobuf"}
TRACE = "0af7651916cd43dd8448eb211c80319c"
START = 1_795_198_770_000_000_000  # 2026-11-20T18:19:30Z, in nanoseconds


def span(number: int = 1, **attributes: str) -> dict[str, Any]:
    return {
        "traceId": TRACE,
        "spanId": f"{number:016x}",
        "name": f"step-{number}",
        "startTimeUnixNano": str(START + number * 1_000_000),
        "endTimeUnixNano": str(START + number * 1_000_000 + 5_000_000),
        "attributes": [
            {"key": key.replace("__", "."), "value": {"stringValue": value}}
            for key, value in attributes.items()
        ],
    }


def otlp(*spans: Any) -> dict[str, Any]:
    return {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {}, "spans": spans}]}]}


def send(client: httpx.Client, *spans: Any) -> dict[str, Any]:
    answer = client.post(SPANS, json=otlp(*spans))
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def stored(client: httpx.Client, **query: Any) -> list[dict[str, Any]]:
    fields = "core,basic,io,metadata,model,usage,metrics,trace_context"
    answer = client.get(OBSERVATIONS, params={"fields": fields, "limit": 1000, **query})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


def command(*options: object) -> list[str]:
    return [sys.executable, "-m", "local_langfuse", *map(str, options)]


def serve(db: Path) -> tuple[subprocess.Popen[str], str]:
    """Start the command on a free port; return it and where it listens."""
    server = subprocess.Popen(
        command("--port", 0, "--db", db),
        cwd=TOP,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    for line in server.stdout:
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            return server, found[0]
    raise AssertionError(server.communicate())


def run(*options: object, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*options),
        cwd=TOP,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# Durability


def test_an_acknowledged_batch_survives_kill_9(tmp_path: Path) -> None:
    db = tmp_path / "langfuse.db"
    server, url = serve(db)
    with client_of(url) as client:
        send(client, span(1), span(2))
        assert client.post(SCORES, json=[score()]).status_code == 202
        server.kill()
        server.communicate(timeout=60)
    again = local_langfuse.start(db)
    with client_of(again.base_url) as client:
        assert [row["name"] for row in stored(client)] == ["step-2", "step-1"]
        assert len(client.get(READ_SCORES).json()["data"]) == 1
    again.stop()
    assert again.stored == 2


def test_a_script_that_fails_without_flush_has_its_trace_stored(tmp_path: Path) -> None:
    script = """
import os, pathlib, local_langfuse
from langfuse import Langfuse
server = local_langfuse.start(pathlib.Path(os.environ["DB"]))
langfuse = Langfuse(public_key=local_langfuse.PUBLIC_KEY, secret_key=local_langfuse.SECRET_KEY,
                    base_url=server.base_url)
with langfuse.start_as_current_observation(name="answer-question"):
    langfuse.score_current_trace(name="relevance", value=1.0)
    raise LookupError("no such passage")
"""
    env = {**os.environ, "DB": str(tmp_path / "langfuse.db"), "PYTHONPATH": str(TOP)}
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.rstrip().endswith("LookupError: no such passage")
    assert ended.stderr.count("\n") < 10, "nothing but the traceback"
    server = local_langfuse.start(tmp_path / "langfuse.db")
    with client_of(server.base_url) as client:
        (row,) = stored(client)
        (scored,) = client.get(READ_SCORES, params={"traceId": row["traceId"]}).json()["data"]
    server.stop()
    assert (row["level"], row["statusMessage"]) == ("ERROR", "LookupError: no such passage")
    assert scored["name"] == "relevance"


def test_no_request_needs_another_thread(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", no_more)
    send(client, span(1))
    assert client.post(SCORES, json=[score()]).status_code == 202
    assert client.post(MODELS, json=MODEL).status_code == 200
    prompt = {"name": "answer-question", "prompt": "Answer {{question}}"}
    assert client.post(PROMPTS, json=prompt).status_code == 201
    page = f"/project/local/traces/{TRACE}"
    paths = ("/", page, "/api/public/projects", OBSERVATIONS, READ_SCORES, MODELS, PROMPTS)
    assert [client.get(path).status_code for path in paths] == [200] * len(paths)
    refused = [client.get("/nope"), client.delete("/"), client.get(MODELS, params={"page": "x"})]
    assert [answer.status_code for answer in refused] == [404, 405, 400]


def test_a_new_file_is_waited_for_while_another_process_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, asked = tmp_path / "langfuse.db", 0
    with closing(sqlite3.connect(path, isolation_level=None)) as other:

        def now() -> float:  # asked before the first try, and after each one that failed
            nonlocal asked
            asked += 1
            if asked == 1:
                other.execute("BEGIN")
                other.execute("SELECT count(*) FROM sqlite_schema").fetchall()
            elif asked == 2:
                other.execute("ROLLBACK")
            return 0.0

        monkeypatch.setattr("local_langfuse.store.BUSY_SECONDS", 0.05)  # what each try waits
        monkeypatch.setattr("local_langfuse.store.time", SimpleNamespace(monotonic=now))
        Store(path).close()
    assert asked == 2
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_processes_that_start_and_write_at_once_lose_nothing(tmp_path: Path) -> None:
    script = """
import pathlib, sys, httpx, local_langfuse, local_langfuse.server
print("ready", flush=True)
sys.stdin.readline()
server = local_langfuse.start(pathlib.Path(sys.argv[1]))
me = int(sys.argv[2])
with httpx.Client(base_url=server.base_url, auth=("pk-lf-local", "sk-lf-local"),
                  trust_env=False, timeout=60, verify=False) as client:
    for number in range(10):
        span = {"traceId": f"{me + 1:032x}", "spanId": f"{number + 1:016x}", "name": "step",
                "startTimeUnixNano": "1795198770000000000"}
        body = {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}
        client.post("/api/public/otel/v1/traces", json=body).raise_for_status()
server.stop()
"""
    db = tmp_path / "new" / "langfuse.db"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(db), str(number)],
            cwd=TOP,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    ended = [(process.communicate(timeout=60)[1], process.returncode) for process in started]
    assert ended == [("", 0)] * 4
    server = local_langfuse.start(db)
    server.stop()
    assert server.stored == 40


def test_the_same_span_updates_and_does_not_duplicate(client: httpx.Client) -> None:
    send(client, span(1, langfuse__observation__output="draft"), span(2))
    send(client, span(1, langfuse__observation__output="final"))
    assert [(row["id"][-1], row["output"]) for row in stored(client)] == [
        ("2", None),
        ("1", "final"),
    ]


def test_the_same_score_updates_and_keeps_its_time(client: httpx.Client) -> None:
    first = score(id="rating", metadata={"channel": "web"}, timestamp="2026-11-20T09:00:00Z")
    client.post(SCORES, json=[first])
    client.post(SCORES, json=[score(id="rating", value=0.25)])
    (row,) = client.get(READ_SCORES, params={"fields": "details"}).json()["data"]
    assert (row["value"], row["timestamp"]) == (0.25, "2026-11-20T09:00:00.000Z")
    assert row["metadata"] == {"channel": "web"}


def test_paging_returns_each_row_once_while_new_ones_arrive(client: httpx.Client) -> None:
    # Ten spans in each millisecond, so that pages end between equal times.
    batch = [
        {**span(n), "startTimeUnixNano": str(START + n // 10 * 1_000_000)} for n in range(1, 101)
    ]
    send(client, *batch)
    query: dict[str, Any] = {"limit": 7}
    seen = []
    while True:
        page = client.get(OBSERVATIONS, params=query).json()
        seen += [row["id"] for row in page["data"]]
        send(client, span(1000 + len(seen)))
        if "cursor" not in page["meta"]:
            break
        query["cursor"] = page["meta"]["cursor"]
    assert sorted(seen) == sorted(one["spanId"] for one in batch)


# Who may ask


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "localhost:1"}, 200),
        ({"host": "[::1]:4747"}, 200),
        ({"host": "LOCALHOST"}, 200),
        ({"host": "langfuse.example"}, 421),
        ({"host": "127.0.0.1.example"}, 421),
        ({"host": "127.0.0.1@example"}, 421),
        ({"host": ""}, 421),
        ({"host": "localhost:4747", "origin": "http://localhost:4747"}, 200),
        ({"host": "localhost:4747", "origin": "http://localhost:8000"}, 403),
        ({"host": "localhost:4747", "origin": "https://localhost:4747"}, 403),
        ({"host": "localhost:4747", "origin": "https://langfuse.example"}, 403),
        ({"host": "localhost:4747", "origin": "null"}, 403),
    ],
)
@pytest.mark.parametrize("path", ["/", "/api/public/health", "/api/public/projects"])
def test_only_this_machine_and_no_foreign_page_may_ask(
    path: str, headers: dict[str, str], status: int, client: httpx.Client
) -> None:
    answer = client.get(path, headers=headers)
    assert answer.status_code == status
    assert not any("access-control" in header for header in answer.headers)


@pytest.mark.parametrize("auth", [None, ("pk-lf-local", "wrong"), ("é", "ü"), ("", "")])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/public/projects"),
        ("GET", OBSERVATIONS),
        ("GET", READ_SCORES),
        ("GET", MODELS),
        ("GET", METRICS),
        ("DELETE", "/api/public/traces"),
        ("POST", SPANS),
        ("POST", SCORES),
        ("GET", "/api/public/nope"),
    ],
)
def test_every_route_but_health_wants_the_keys(
    method: str, path: str, auth: tuple[str, str] | None, client: httpx.Client
) -> None:
    with httpx.Client(base_url=client.base_url, auth=auth, trust_env=False) as stranger:
        assert stranger.request(method, path).status_code == 401
        assert stranger.get("/api/public/health").status_code == 200


def test_it_listens_on_loopback_only(client: httpx.Client) -> None:
    port = int(str(client.base_url).rpartition(":")[2].strip("/"))
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", port), timeout=2).close()


HEALTHY = b"HTTP/1.1 200 OK\r\ncontent-length: "


@pytest.mark.parametrize(
    "answer",
    [
        HEALTHY + b'15\r\n\r\n{"status":"OK"}',
        HEALTHY + b'24\r\n\r\n{"local_langfuse":{"a":1}}',
        HEALTHY + b"2\r\n\r\n[]",
        HEALTHY + b"9000\r\n\r\n" + b"[" * 9000,
        HEALTHY + b"3\r\n\r\n\xff\xfe\xfd",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"",
    ],
)
def test_it_is_told_from_another_program_on_its_port(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(local_langfuse.running, stranger.getsockname()[1])
        connection, _ = stranger.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(answer)
        assert asked.result(timeout=60) is None


def test_a_program_asks_which_local_instance_runs_and_whether_it_lasts(
    server: tuple[str, Path], tmp_path: Path
) -> None:
    url, db = server
    port = int(url.rpartition(":")[2])
    lasting = local_langfuse.Running(str(db.resolve()), lasts=True)
    for where in (port, url, f"{url}/", f"http://localhost:{port}"):
        assert local_langfuse.running(where) == lasting
    nowhere = (
        99999,
        "",
        "http://[",
        f"https://127.0.0.1:{port}",
        f"http://langfuse.example:{port}",
    )
    assert [local_langfuse.running(where) for where in nowhere] == [None] * len(nowhere)
    brief = local_langfuse.start(tmp_path / "brief.db", lasts=False)
    with client_of(brief.base_url) as client:
        assert client.get("/api/public/health").json()["lasts"] is False
    found = local_langfuse.running(brief.base_url)
    brief.stop()
    assert found == local_langfuse.Running(str((tmp_path / "brief.db").resolve()), lasts=False)
    assert local_langfuse.running(brief.base_url) is None


def test_the_command_leaves_another_instance_alone(tmp_path: Path) -> None:
    ours, other = tmp_path / "ours.db", tmp_path / "other.db"
    for lasts in (True, False):
        there = local_langfuse.start(ours, lasts=lasts)
        port = there.base_url.rpartition(":")[2]
        same, different = (run("--port", port, "--db", db) for db in (ours, other))
        there.stop()
        assert (same.returncode == 0) is lasts
        assert (f"Already running on port {port}, with {ours.resolve()}:" in same.stdout) is lasts
        for refused in (different,) if lasts else (same, different):
            assert (refused.returncode, refused.stdout) == (2, "")
            assert refused.stderr.count("\n") == 1
            assert str(ours.resolve()) in refused.stderr
            assert "--port" in refused.stderr
    assert not other.exists()


# Too much, and wrong


def zeros(mebibytes: int) -> Iterator[bytes]:
    for _ in range(mebibytes):
        yield bytes(1024 * 1024)


@pytest.mark.parametrize(
    ("path", "kind"), [(SPANS, "plain"), (SPANS, "chunked"), (SPANS, "bomb"), (SCORES, "bomb")]
)
def test_more_than_64_mebibytes_are_refused(path: str, kind: str, client: httpx.Client) -> None:
    headers = dict(JSON)
    content: Any = zeros(65)
    if kind == "bomb":  # 65 KB that unpack to 65 MiB
        headers["content-encoding"] = "gzip"
        packer = zlib.compressobj(wbits=31)
        content = b"".join(map(packer.compress, zeros(65))) + packer.flush()
        assert len(content) < 100_000
    elif kind == "plain":
        headers["content-length"] = str(65 * 1024 * 1024)
    answer = client.post(path, content=content, headers=headers)
    assert answer.status_code == 413
    assert "64 MiB" in answer.json()["message"]
    assert client.get("/api/public/projects").status_code == 200


DEEP = "[" * 100_000 + "]" * 100_000
BAD_BODIES: list[tuple[str, bytes, dict[str, str]]] = [
    *((path, body, JSON) for path in (SPANS, SCORES, MODELS) for body in (
        b"", b"not json", b"\xff\xfe\xff", DEEP.encode(), b'{"a": NaN}', b"1", b'"x"', b"null",
        b"9" * 5000,
    )),
    *((path, b"{}", {"content-type": kind}) for path in (SPANS, SCORES, MODELS) for kind in (
        "text/plain", "multipart/form-data", "application/x-www-form-urlencoded",
    )),
    *((path, body, {**JSON, "content-encoding": "gzip"}) for path in (SPANS, SCORES) for body in (
        b"not gzip", b"", gzip.compress(b"[]")[:-4], gzip.compress(b"[]") + b"more",
    )),
    (SPANS, b"{}", {**JSON, "content-encoding": "br"}),
    (SPANS, b"garbage", PROTOBUF),
    (SPANS, b'{"resourceSpans": {"a": 1}}', JSON),
    (SPANS, b'{"resourceSpans": [1]}', JSON),
    (SPANS, b'{"resourceSpans": [{"scopeSpans": "x"}]}', JSON),
    (SPANS, b'{"resourceSpans": [{"scopeSpans": [{"spans": 1}]}]}', JSON),
    (SCORES, b"{}", JSON),
    (SCORES, b'{"name": "a", "value": 1}', JSON),
    (MODELS, b"[]", JSON),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(BAD_BODIES)))
def test_a_bad_body_is_refused_with_a_message(number: int, client: httpx.Client) -> None:
    path, body, headers = BAD_BODIES[number]
    answer = client.post(path, content=body, headers=headers)
    assert 400 <= answer.status_code < 500, (path, body[:50], headers, answer.text)
    assert answer.json()["message"]


BAD_SPANS: list[Any] = [
    None,
    1,
    "span",
    [],
    {},
    {**span(), "traceId": "xyz"},
    {**span(), "traceId": 5},
    {**span(), "traceId": "00" * 16},
    {**span(), "spanId": "00" * 8},
    {**span(), "spanId": "ab"},
    {**span(), "startTimeUnixNano": "0"},
    {**span(), "startTimeUnixNano": "9" * 40},
    {**span(), "startTimeUnixNano": [1]},
    {**span(), "name": 5},
    {**span(), "name": "\ud800"},
    {**span(), "attributes": 5},
    {**span(), "attributes": [5]},
    span(langfuse__observation__usage_details='{"input": 99999999999999999999}'),
    span(langfuse__observation__usage_details='{"input": 1e300}'),
    span(langfuse__observation__prompt__version="99999999999999999999",
         langfuse__observation__type="generation"),
    span(langfuse__observation__cost_details='{"input": 1e308, "input_cached": 1e308}'),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(BAD_SPANS)))
def test_a_bad_span_is_counted_and_the_rest_is_stored(number: int, client: httpx.Client) -> None:
    batch = json.dumps(otlp(span(1), BAD_SPANS[number], span(2)))
    if not isinstance(BAD_SPANS[number], dict) or BAD_SPANS[number].get("spanId") == f"{1:016x}":
        batch = json.dumps(otlp(span(3), BAD_SPANS[number], span(2)))
    answer = client.post(SPANS, content=gzip.compress(batch.encode()), headers=PACKED)
    assert answer.status_code == 200, answer.text
    assert answer.json()["partialSuccess"]["rejectedSpans"] == 1
    assert answer.json()["partialSuccess"]["errorMessage"]
    assert len(stored(client)) == 2


PACKED = {**JSON, "content-encoding": "gzip"}


@pytest.mark.parametrize("part", ["resource", "scope"])
@pytest.mark.parametrize("value", [1, "x", [1], {"attributes": 1}, {"attributes": [1]}])
def test_a_bad_resource_or_scope_costs_only_its_own_spans(
    part: str, value: Any, client: httpx.Client
) -> None:
    bad, good = otlp(span(1))["resourceSpans"][0], otlp(span(2))["resourceSpans"][0]
    (bad if part == "resource" else bad["scopeSpans"][0])[part] = value
    answer = client.post(SPANS, json={"resourceSpans": [bad, good]})
    assert answer.json()["partialSuccess"]["rejectedSpans"] == 1
    assert [row["name"] for row in stored(client)] == ["step-2"]


def test_a_bad_span_in_protobuf_is_counted_and_the_rest_is_stored(client: httpx.Client) -> None:
    good = Span(trace_id=b"a" * 16, span_id=b"b" * 8, name="a", start_time_unix_nano=START)
    bad = Span(trace_id=b"a" * 16, span_id=b"b", name="b", start_time_unix_nano=START)
    groups = [ResourceSpans(scope_spans=[ScopeSpans(spans=[bad, good])])]
    body = ExportTraceServiceRequest(resource_spans=groups).SerializeToString()
    answer = client.post(SPANS, content=body, headers=PROTOBUF)
    assert answer.json()["partialSuccess"]["rejectedSpans"] == 1
    assert [row["name"] for row in stored(client)] == ["a"]


@pytest.mark.parametrize("text", ["\0", "a\0b", '"\\ud800"', DEEP, "NaN", "1e999", '{"a":' * 150])
def test_odd_attribute_values_are_kept_as_text(text: str, client: httpx.Client) -> None:
    attributes = {
        "langfuse__observation__input": text,
        "langfuse__observation__metadata__odd": text,
        "langfuse__observation__usage_details": text,
        "langfuse__observation__model__parameters": text,
        "langfuse__trace__tags": text,
        "langfuse__observation__completion_start_time": text,
    }
    assert send(client, span(1, **attributes)) == {}
    (row,) = stored(client, expandMetadata="odd")
    assert (row["input"], row["metadata"]["odd"]) == (text, text)
    assert client.get(f"/project/local/traces/{TRACE}").status_code == 200


BAD_QUERIES = [
    *((OBSERVATIONS, {"limit": limit}) for limit in ("0", "-1", "1001", "x", "1.5", "", "٣")),
    *((READ_SCORES, {"limit": limit}) for limit in ("0", "-1", "101", "x", "9" * 30)),
    *((path, {"cursor": cursor}) for path in (OBSERVATIONS, READ_SCORES) for cursor in (
        "", "garbage", "e30=", "W10=", "é", "WzFd", "WyJ4IiwgInkiLCAieiJd",
        "WzEsIFsyXSwgWzNdXQ==", "Wzk5OTk5OTk5OTk5OTk5OTk5OTk5LCAiYSIsICJiIl0=",
        "WzEsICJcdWQ4MDAiLCAiYiJd",
    )),
    *((OBSERVATIONS, {name: "yesterday"}) for name in ("fromStartTime", "toStartTime")),
    (OBSERVATIONS, {"fromStartTime": "2026-11-20"}),
    (OBSERVATIONS, {"fromStartTime": "2026-11-20T00:00:00"}),
    (OBSERVATIONS, {"fromStartTime": "0001-01-01T00:00:00+14:00"}),
    (OBSERVATIONS, {"isRootObservation": "maybe"}),
    (OBSERVATIONS, {"parseIoAsJson": "true"}),
    (OBSERVATIONS, {"name": "a\0b"}),
    (READ_SCORES, {"fields": "nonsense"}),
    (READ_SCORES, {"dataType": "NONSENSE"}),
    (READ_SCORES, {"fromTimestamp": "yesterday"}),
    (READ_SCORES, {"valueMin": "1"}),
    (READ_SCORES, {"valueMin": "nan", "dataType": "NUMERIC"}),
    (READ_SCORES, {"value": "1"}),
    (READ_SCORES, {"value": "maybe", "dataType": "BOOLEAN"}),
    (READ_SCORES, {"value": "inf", "dataType": "NUMERIC"}),
    (READ_SCORES, {"observationId": "a"}),
    (READ_SCORES, {"traceId": "a", "sessionId": "b"}),
    (MODELS, {"page": "0"}),
    (MODELS, {"limit": "-5"}),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(BAD_QUERIES)))
def test_a_bad_query_is_refused_with_a_message(number: int, client: httpx.Client) -> None:
    path, query = BAD_QUERIES[number]
    answer = client.get(path, params=query)
    assert answer.status_code == 400, (path, query, answer.text)
    assert answer.json()["message"]


NAME = {"type": "string", "column": "name", "operator": "=", "value": "a"}
TEAM = {**NAME, "type": "stringObject", "column": "metadata", "key": "team"}
BAD_FILTERS: list[Any] = [
    {},
    1,
    "name",
    [1],
    [{}],
    [{**NAME, "column": "name; DROP TABLE observations"}],
    [{**NAME, "column": 5}],
    [{**NAME, "column": ["name"]}],
    [{**NAME, "type": "regex"}],
    [{**NAME, "type": {}}],
    [{**NAME, "operator": "= 'a' OR 1 ="}],
    [{**NAME, "operator": None}],
    [{**NAME, "value": 5}],
    [{**NAME, "value": "\ud800"}],
    [{**NAME, "type": "number"}],
    [{**NAME, "column": "input", "operator": "contains"}],
    [{"type": "number", "column": "latency", "operator": ">", "value": "x"}],
    [{"type": "number", "column": "latency", "operator": ">", "value": True}],
    [{"type": "number", "column": "latency", "operator": ">", "value": 10**400}],
    [{"type": "datetime", "column": "startTime", "operator": ">", "value": "x"}],
    [{"type": "boolean", "column": "isRootObservation", "operator": "=", "value": "true"}],
    [{"type": "arrayOptions", "column": "tags", "operator": "any of", "value": "a"}],
    [{"type": "arrayOptions", "column": "tags", "operator": "any of", "value": [1]}],
    [{"type": "stringOptions", "column": "name", "operator": "any of", "value": ["a"] * 1001}],
    [{**TEAM, "key": None}],
    [{**TEAM, "operator": "any of"}],
    [NAME] * 51,
]


@pytest.mark.parametrize("number", range(len(BAD_FILTERS)))
def test_a_bad_filter_is_refused_with_a_message(number: int, client: httpx.Client) -> None:
    answer = client.get(OBSERVATIONS, params={"filter": json.dumps(BAD_FILTERS[number])})
    assert answer.status_code == 400, answer.text
    assert answer.json()["message"]


FILTERS = [
    (NAME | {"value": "step-1"}, {1}),
    (NAME | {"operator": "contains", "value": "%"}, set()),
    (NAME | {"operator": "does not contain", "value": "1"}, {2}),
    (NAME | {"operator": "starts with", "value": "step"}, {1, 2}),
    (NAME | {"operator": "starts with", "value": "tep"}, set()),
    (NAME | {"operator": "ends with", "value": "2"}, {2}),
    (NAME | {"operator": "ends with", "value": ""}, {1, 2}),
    (NAME | {"operator": "ends with", "value": "a longer step-2"}, set()),
    (NAME | {"column": "input", "operator": "matches", "value": "SHOES"}, {1}),
    (NAME | {"column": "output", "operator": "=", "value": "100%"}, {2}),
    (TEAM | {"value": "sales"}, {1}),
    (TEAM | {"operator": "is set"}, {1, 2}),
    (TEAM | {"key": "a.b", "value": "yes"}, {1}),
    (TEAM | {"key": "$.team", "value": "sales"}, set()),
    (TEAM | {"operator": "is not set", "key": "tier"}, {2}),
    (TEAM | {"operator": "does not contain", "value": "sal"}, {2}),
    (TEAM | {"operator": "ends with", "value": "ops"}, {2}),
    (TEAM | {"key": "cached", "value": "true"}, {1}),
    (TEAM | {"type": "numberObject", "key": "tier", "operator": ">=", "value": 3}, {1}),
    (TEAM | {"type": "categoryOptions", "operator": "any of", "value": ["ops", "x"]}, {2}),
    (TEAM | {"type": "categoryOptions", "operator": "none of", "value": ["ops", "x"]}, {1}),
    ({"type": "arrayOptions", "column": "tags", "operator": "any of", "value": ["x", "y"]}, {1, 2}),
    ({"type": "arrayOptions", "column": "tags", "operator": "all of", "value": ["x", "y"]}, {1}),
    ({"type": "arrayOptions", "column": "tags", "operator": "none of", "value": ["x"]}, {2}),
    ({"type": "stringOptions", "column": "name", "operator": "none of", "value": ["step-1"]}, {2}),
    ({"type": "null", "column": "input", "operator": "is null"}, {2}),
    ({"type": "null", "column": "endTime", "operator": "is not null"}, {1, 2}),
    ({"type": "number", "column": "latency", "operator": "=", "value": 0.005}, {1, 2}),
    ({"type": "number", "column": "totalCost", "operator": ">", "value": 0}, {1}),
    ({"type": "number", "column": "tokensPerSecond", "operator": ">=", "value": 100}, {1}),
    ({"type": "boolean", "column": "isRootObservation", "operator": "<>", "value": False}, {1, 2}),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(FILTERS)))
def test_a_filter_finds_what_it_says(number: int, client: httpx.Client) -> None:
    one = span(
        1,
        langfuse__observation__input="Can I return shoes?",
        langfuse__observation__model__name="gpt-4o-mini",
        langfuse__observation__usage_details='{"input": 10, "output": 5}',
        langfuse__trace__metadata='{"a": {"b": "yes"}, "cached": true}',
        langfuse__trace__metadata__team='"sales"',
        langfuse__trace__metadata__tier="3",
        langfuse__trace__tags='["x", "y"]',
    )
    two = span(
        2,
        langfuse__observation__output="100%",
        langfuse__trace__metadata__team='"ops"',
        langfuse__trace__tags='["y"]',
    )
    send(client, one, two)
    condition, expected = FILTERS[number]
    found = stored(client, filter=json.dumps([condition]))
    assert {int(row["id"], 16) for row in found} == expected


def test_a_filter_wins_over_the_parameter_for_the_same_column_only(client: httpx.Client) -> None:
    send(client, span(1), span(2, user__id="ada"))
    condition = json.dumps([NAME | {"value": "step-2"}])
    assert len(stored(client, filter=condition, name="step-1")) == 1
    assert stored(client, filter=condition, userId="bob") == []


def score(**more: Any) -> dict[str, Any]:
    return {"name": "relevance", "value": 0.5, "traceId": TRACE, **more}


BAD_SCORES: list[Any] = [
    None,
    1,
    [],
    {},
    score(name=""),
    score(name=5),
    score(name="\ud800"),
    score(id=5),
    score(value=None),
    score(value=True),
    score(value=[1]),
    score(value="good", dataType="NUMERIC"),
    score(value=2, dataType="BOOLEAN"),
    score(value=1, dataType="CATEGORICAL"),
    score(value="x" * 501, dataType="TEXT"),
    score(value=10**400),
    score(dataType="STARS"),
    score(dataType=[]),
    score(traceId=None),
    score(traceId=5),
    score(sessionId="both"),
    score(traceId=None, observationId="a", sessionId="b"),
    score(timestamp="yesterday"),
    score(timestamp=5),
    score(timestamp="0001-01-01T00:00:00+14:00"),
    score(metadata="text"),
    score(metadata={"deep": json.loads("[" * 200 + "]" * 200)}),
    score(environment="Langfuse!"),
    score(source="EVAL"),
    score(comment=5),
]


@pytest.mark.parametrize("number", range(len(BAD_SCORES)))
def test_of_a_batch_the_good_scores_are_kept(number: int, client: httpx.Client) -> None:
    batch = json.dumps([score(id="first"), BAD_SCORES[number], score(id="last")])
    answer = client.post(SCORES, content=batch, headers=JSON)
    assert answer.status_code == 207, answer.text
    assert (answer.json()["accepted"], answer.json()["rejected"]) == (2, 1)
    assert answer.json()["errors"][0]["message"]
    assert {row["id"] for row in client.get(READ_SCORES).json()["data"]} == {"first", "last"}


MODEL = {"modelName": "shop-llm", "matchPattern": "(?i)^shop", "unit": "TOKENS", "inputPrice": 1e-6}


@pytest.mark.parametrize(
    "change",
    [
        {"modelName": 5},
        {"matchPattern": "("},
        {"matchPattern": r"(?:(\w+)(\w+)\2\1)+\d!"},  # takes for ever, on any machine
        {"matchPattern": 5},
        {"unit": "BEANS"},
        {"inputPrice": -1},
        {"inputPrice": "1"},
        {"inputPrice": True},
        {"inputPrice": None},
        {"totalPrice": 1e-6},
        {"startDate": "yesterday"},
        {"tokenizerId": 5},
        {"tokenizerConfig": "\ud800"},
    ],
)
def test_a_bad_model_is_refused(change: dict[str, Any], client: httpx.Client) -> None:
    body = json.dumps({**MODEL, **change})
    answer = client.post(MODELS, content=body, headers=JSON)
    assert answer.status_code == 400, answer.text
    assert answer.json()["message"]


def test_an_own_price_wins_over_the_table_and_unknown_is_not_zero(client: httpx.Client) -> None:
    own = {**MODEL, "modelName": "mini", "matchPattern": "^gpt-4o-mini$", "inputPrice": 1e-3}
    made = client.post(MODELS, json=own).json()
    assert client.get(MODELS).json()["data"][0] == made
    usage = {"langfuse__observation__usage_details": '{"input": 10}'}
    for number, name in enumerate(("gpt-4o-mini", "gpt-4o", "no-such-model"), start=1):
        send(client, span(number, langfuse__observation__model__name=name, **usage))
    unknown, table, mine = stored(client)
    assert mine["costDetails"] == {"input": 0.01, "total": 0.01}
    assert table["totalCost"] == pytest.approx(10 * 2.5e-6)
    assert unknown["costDetails"] == {}
    assert client.delete(f"{MODELS}/{made['id']}").status_code == 204
    assert client.delete(f"{MODELS}/{made['id']}").status_code == 404


def test_what_is_not_here_says_so(client: httpx.Client) -> None:
    missing = client.get("/api/public/sessions")
    assert missing.status_code == 404
    assert "local stand-in" in missing.json()["message"]
    assert "v2/metrics, scores, v3/scores" in missing.json()["message"], "what there is"
    wrong = client.delete("/api/public/projects")
    assert (wrong.status_code, wrong.json()) == (405, {"message": "Method not allowed"})


# The command


def test_ctrl_c_and_sigterm_end_it_quietly(tmp_path: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        server, url = serve(tmp_path / "langfuse.db")
        with client_of(url) as client:
            send(client, span(1))
            server.send_signal(number)
            _, complaint = server.communicate(timeout=60)
        assert (server.returncode, complaint) == (0, "")


def test_a_busy_port_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused(run("--port", taken.getsockname()[1], "--db", tmp_path / "a.db"), "--port")
    for port in ("99999", "٣"):
        refused(run("--db", tmp_path / "a.db", LOCAL_LANGFUSE_PORT=port), "PORT")


def test_a_database_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    text, foreign, newer = (tmp_path / name for name in ("text.db", "foreign.db", "newer.db"))
    text.write_text("This is not a database, " * 100)
    for db, statement in ((foreign, "CREATE TABLE t (a)"), (newer, "PRAGMA user_version = 99")):
        if db == newer:
            local_langfuse.start(newer).stop()
        connection = sqlite3.connect(db)
        connection.execute(statement)
        connection.close()
    for db in (text, foreign, newer, tmp_path, text / "below" / "a.db"):
        before = db.read_bytes() if db.is_file() else b""
        with pytest.raises(local_langfuse.CannotStart, match="LOCAL_LANGFUSE_DB") as caught:
            local_langfuse.start(db)
        assert ("newer" in str(caught.value)) == (db == newer)
        assert not db.is_file() or db.read_bytes() == before, "left as it was"
    refused(run("--port", 0, "--db", newer), "--db")


def refused(ended: subprocess.CompletedProcess[str], fix: str) -> None:
    assert ended.returncode == 2, ended
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    assert fix in ended.stderr


@pytest.mark.parametrize(
    "asked",
    [
        {"traceId": f"{5:032x}"},
        {"userId": "user-5"},
        {"sessionId": "chat-5"},
        {"name": "name-5"},
        {"fromStartTime": "2026-11-20T00:00:00Z"},
    ],
)
def test_a_page_is_found_by_an_index_and_needs_no_sorting(
    tmp_path: Path, asked: dict[str, str]
) -> None:
    store = Store(tmp_path / "langfuse.db")
    statements: list[str] = []
    store._db.set_trace_callback(statements.append)
    read.observations(store, Query(QueryParams(asked)))
    store._db.set_trace_callback(None)
    [statement] = [each for each in statements if each.startswith("SELECT")]
    plan = " ".join(str(row[3]) for row in store.rows(f"EXPLAIN QUERY PLAN {statement}"))
    store.close()
    assert plan.startswith("SEARCH observations USING INDEX"), "a scan reads every row"
    assert "TEMP B-TREE" not in plan


def test_small_answers_are_not_held_back() -> None:
    # asyncio switches off that delay (40 ms an answer) only where the protocol is named.
    with listen(0, "--port") as listening:
        assert listening.proto == socket.IPPROTO_TCP


def test_importing_the_package_loads_no_server() -> None:
    code = "import sys, local_langfuse; print({'starlette', 'uvicorn'} & {*sys.modules})"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=TOP, capture_output=True, text=True, check=True
    )
    assert ended.stdout == "set()\n"


def test_a_raw_request_without_host_or_with_two_is_refused(client: httpx.Client) -> None:
    port = int(str(client.base_url).rpartition(":")[2].strip("/"))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest("GET", "/", skip_host=True)
    connection.putheader("Host", "localhost")
    connection.putheader("Host", "langfuse.example")
    connection.endheaders()
    assert connection.getresponse().status in (400, 421)
    connection.close()
