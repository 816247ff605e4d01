"""Feedback over real HTTP: what is accepted is stored, what is not accepted says why."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import KEYS, TOP, Desk, promised_trees, stored_observations, stored_trees

import local_langfuse

RECIPE = ("-m", "recipes.feedback_api")
REFUSING = str(Path(__file__).parent / "refuse_sockets")
PROMISED = promised_trees((TOP / "recipes/feedback_api.py").read_text())
QUESTION = {"question": "How long is the warranty?"}
UNKNOWN = "0123456789abcdef" * 2
PATIENCE = 60  # seconds, on a machine that is busy


@dataclass
class Api:
    """The recipe as a process, and a client of it."""

    process: subprocess.Popen[str]
    client: httpx.Client

    def ask(self) -> dict[str, Any]:
        answer = self.client.post("/ask", json=QUESTION)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def rate(self, trace_id: str, **opinion: Any) -> httpx.Response:
        return self.client.post("/feedback", json={"trace_id": trace_id, **opinion})

    def end(self, number: signal.Signals) -> tuple[int, str, str]:
        """Send a signal; return the exit status and what was printed since the start."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out, err


@contextmanager
def serving_api(desk: Desk, *command: str, **env: str) -> Iterator[Api]:
    """Run the recipe on a free port until the block ends; no trace is sent before that."""
    patient = {"LANGFUSE_FLUSH_INTERVAL": "600", "LANGFUSE_TIMEOUT": str(PATIENCE)}
    process = subprocess.Popen(
        [sys.executable, *(command or RECIPE), "--port", "0"],
        cwd=TOP,
        env=desk.environment(**patient, **env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        found = next(filter(None, (re.search(r"http://[\d.:]+(?=/ask)", line) for line in lines)))
        with httpx.Client(base_url=found[0], timeout=PATIENCE, trust_env=False) as client:
            yield Api(process, client)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Desk:
    return Desk(tmp_path_factory.mktemp("feedback"), vocabulary)


@pytest.fixture(scope="module")
def langfuse(desk: Desk) -> Iterator[httpx.Client]:
    """A client of a local Langfuse on the file into which the recipe's own one writes."""
    server = local_langfuse.start(desk.db)
    with httpx.Client(base_url=server.base_url, auth=KEYS, timeout=PATIENCE) as client:
        yield client
    server.stop()


@pytest.fixture(scope="module")
def api(desk: Desk) -> Iterator[Api]:
    with serving_api(desk) as api:
        yield api


@pytest.fixture(scope="module")
def answered(api: Api) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda _: api.ask(), range(4)))


def stored_scores(langfuse: httpx.Client, trace_id: str) -> dict[str, Any]:
    query = {"fields": "details,subject", "traceId": trace_id}
    answer = langfuse.get("/api/public/v3/scores", params=query)
    answer.raise_for_status()
    return {row["name"]: row for row in answer.json()["data"]}


def values(scores: dict[str, Any]) -> dict[str, Any]:
    return {name: row["value"] for name, row in scores.items()}


def test_an_opinion_is_stored_when_it_is_accepted(
    api: Api, answered: list[dict[str, Any]], langfuse: httpx.Client
) -> None:
    assert all("two years" in each["answer"] for each in answered)
    first, second, third, fourth = (each["trace_id"] for each in answered)
    assert len({first, second, third, fourth}) == 4

    reply = api.rate(first, rating=4, comment="<b>clear</b>")
    opinion = {"user-rating": 0.75, "user-satisfaction": "satisfied"}
    assert (reply.status_code, reply.json()) == (200, opinion)
    stored = stored_scores(langfuse, first)
    assert values(stored) == opinion
    kinds = {"user-rating": "NUMERIC", "user-satisfaction": "CATEGORICAL"}
    for name, row in stored.items():
        assert row["id"] == f"{first}-{name}"
        assert row["environment"] == "development"
        assert row["comment"] == "<b>clear</b>"
        assert row["dataType"] == kinds[name]

    assert api.rate(second, thumbs="up").json() == {**opinion, "user-rating": 1}
    assert api.rate(third, thumbs="down").json()["user-rating"] == 0
    neutral = {"user-rating": 0.5, "user-satisfaction": "neutral"}
    assert api.rate(fourth, rating=3).json() == neutral
    assert stored_observations(langfuse) == [], "no trace was stored when these opinions came"


def test_a_second_opinion_replaces_the_first(
    api: Api, answered: list[dict[str, Any]], langfuse: httpx.Client
) -> None:
    trace_id = answered[0]["trace_id"]
    assert api.rate(trace_id, rating=5, comment="Fine.").status_code == 200
    assert api.rate(trace_id, thumbs="down").status_code == 200
    stored = stored_scores(langfuse, trace_id)
    assert values(stored) == {"user-rating": 0, "user-satisfaction": "unsatisfied"}
    assert {row["comment"] for row in stored.values()} == {"(no comment)"}, "the old one is gone"
    assert {row["id"] for row in stored.values()} == {f"{trace_id}-{name}" for name in stored}


def test_an_opinion_has_the_day_of_the_answer(api: Api, langfuse: httpx.Client) -> None:
    """Langfuse replaces a score of the same day only."""
    began = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)
    trace_id = "ab" * 16
    spans = [
        {
            "traceId": trace_id,
            "spanId": f"{seconds + 1:016x}",
            "name": "answer-question",
            "startTimeUnixNano": f"{began.timestamp() + seconds:.0f}000000000",
            "endTimeUnixNano": f"{began.timestamp() + 9:.0f}000000000",
        }
        for seconds in (2, 0, 1)
    ]
    sent = {"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}
    langfuse.post("/api/public/otel/v1/traces", json=sent).raise_for_status()
    assert api.rate(trace_id, rating=2).json()["user-satisfaction"] == "unsatisfied"
    for row in stored_scores(langfuse, trace_id).values():
        assert datetime.fromisoformat(row["timestamp"]) == began


def test_an_unknown_trace_is_404(api: Api) -> None:
    reply = api.rate(UNKNOWN, rating=4)
    assert reply.status_code == 404
    assert reply.json() == {"detail": "There is no answer with this trace id."}


BAD = {
    "no trace id": '{"rating": 4}',
    "a malformed trace id": '{"trace_id": "ABC", "rating": 4}',
    "a line break after the trace id": f'{{"trace_id": "{UNKNOWN}\\n", "rating": 4}}',
    "neither": f'{{"trace_id": "{UNKNOWN}"}}',
    "both": f'{{"trace_id": "{UNKNOWN}", "rating": 4, "thumbs": "up"}}',
    "too few stars": f'{{"trace_id": "{UNKNOWN}", "rating": 0}}',
    "too many stars": f'{{"trace_id": "{UNKNOWN}", "rating": 6}}',
    "stars as text": f'{{"trace_id": "{UNKNOWN}", "rating": "4"}}',
    "half a star": f'{{"trace_id": "{UNKNOWN}", "rating": 4.5}}',
    "true": f'{{"trace_id": "{UNKNOWN}", "rating": true}}',
    "not a number": f'{{"trace_id": "{UNKNOWN}", "rating": NaN}}',
    "another thumb": f'{{"trace_id": "{UNKNOWN}", "thumbs": "sideways"}}',
    "a comment too long": f'{{"trace_id": "{UNKNOWN}", "rating": 4, "comment": "{"x" * 1001}"}}',
    "half a character": f'{{"trace_id": "{UNKNOWN}", "rating": 4, "comment": "\\ud800"}}',
    "an extra field": f'{{"trace_id": "{UNKNOWN}", "rating": 4, "user": "ada"}}',
    "a list": "[]",
    "not JSON": "rating=4",
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD.keys())
def test_bad_input_is_422_and_is_not_repeated(api: Api, body: str) -> None:
    headers = {"content-type": "application/json"}
    reply = api.client.post("/feedback", content=body, headers=headers)
    assert reply.status_code == 422, reply.text
    assert all(each["why"] for each in reply.json()["detail"])
    assert "xxx" not in reply.text


def test_a_page_of_another_site_gets_nothing(api: Api) -> None:
    ask = api.client.post
    body = json.dumps(QUESTION)
    # A page may send this without asking the browser first; JSON it may not.
    assert ask("/ask", content=body, headers={"content-type": "text/plain"}).status_code == 422
    assert ask("/ask", json=QUESTION, headers={"host": "shop.example"}).status_code == 400
    # Asked first, as the browser does before it sends JSON to another site.
    preflight = {"origin": "http://shop.example", "access-control-request-method": "POST"}
    reply = api.client.options("/ask", headers=preflight)
    assert "access-control-allow-origin" not in reply.headers


def test_a_port_that_is_taken_is_one_line(
    api: Api, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from recipes.feedback_api import main

    port = api.client.base_url.port
    monkeypatch.setattr(sys, "argv", ["feedback_api", "--port", str(port)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"Port {port} is taken")
    assert said.err.count("\n") == 1


def test_ctrl_c_sends_every_trace_and_links_to_the_last(
    desk: Desk, api: Api, answered: list[dict[str, Any]], langfuse: httpx.Client
) -> None:
    before = stored_trees(langfuse)
    status, out, err = api.end(signal.SIGINT)
    assert (status, err) == (0, "")
    assert len(stored_trees(langfuse)) == len(before) + len(answered)
    ours = {each["trace_id"] for each in answered}
    rows = [row for row in stored_observations(langfuse) if row["traceId"] in ours]
    assert stored_trees(langfuse)[len(before) :] == PROMISED * len(answered)
    for row in rows:
        if row["name"] == "answer-question":
            assert row["parentObservationId"] is None
            assert row["input"] == QUESTION["question"]
            assert row["output"] == answered[0]["answer"]
            [at, _] = (
                each["timestamp"] for each in stored_scores(langfuse, row["traceId"]).values()
            )
            assert at < row["endTime"], "the time of the answer, not of the click"
        else:
            assert row["costDetails"]["total"] > 0
    link = out.split()[-1]
    assert link.startswith(f"http://127.0.0.1:{desk.port}/project/local/traces/")
    assert link.rpartition("/")[2] in ours


def test_without_tracing_it_answers_and_says_that_feedback_is_not_stored(
    tmp_path: Path, vocabulary: Path
) -> None:
    off, refused = Desk(tmp_path, vocabulary), tmp_path / "refused"
    with serving_api(
        off,
        LANGFUSE_TRACING_ENABLED="false",
        PYTHONPATH=REFUSING,
        REFUSE_SOCKETS="all",
        REFUSED_SOCKETS_FILE=str(refused),
    ) as api:
        answer = api.ask()
        assert answer["trace_id"] is None
        assert "two years" in answer["answer"]
        reply = api.rate(UNKNOWN, rating=4)
        assert (reply.status_code, reply.json()["detail"][:15]) == (503, "Tracing is off ")
        assert api.end(signal.SIGINT)[::2] == (0, "")
    assert not refused.exists(), refused.read_text()
    assert not off.db.exists()


@dataclass
class Trouble:
    """A model that answers when it may, before a Langfuse that is down, refuses or takes."""

    langfuse: httpx.Client  # what stores in the end
    url: str = ""
    takes: str = "nothing"  # or "no scores", or "all"
    model_works: bool = True
    asked: threading.Event = field(default_factory=threading.Event)
    allowed: threading.Event = field(default_factory=threading.Event)

    def reply(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, bytes] | None:
        """Return status and content, or None to hang up."""
        if path == "/v1/chat/completions":
            self.asked.set()
            self.allowed.wait(PATIENCE)
            message = {"role": "assistant", "content": "Two years."}
            chosen = {"id": "1", "created": 1, "choices": [{"index": 0, "message": message}]}
            return (200, json.dumps(chosen).encode()) if self.model_works else (400, b"{}")
        if self.takes == "nothing":
            return None
        if path.endswith("/scores") and self.takes == "no scores":
            refusal = {"accepted": 1, "rejected": 1, "errors": [{"message": "no value"}]}
            return 207, json.dumps(refusal).encode()
        kept = ("authorization", "content-type", "content-encoding")
        sent = {key: headers[key] for key in kept if key in headers}
        answer = self.langfuse.request(method, path, headers=sent, content=body)
        return answer.status_code, answer.content


@pytest.fixture
def trouble(langfuse: httpx.Client) -> Iterator[Trouble]:
    trouble = Trouble(langfuse)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            reply = trouble.reply(self.command, self.path, self.headers, body)
            if reply:
                self.send_response(reply[0])
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(reply[1])))
                self.end_headers()
                self.wfile.write(reply[1])

        do_GET = do_POST  # noqa: N815  the name is http.server's

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        trouble.url = f"http://127.0.0.1:{server.server_port}"
        yield trouble
        trouble.allowed.set()
        server.shutdown()


WITH_LITTLE_MEMORY = "from recipes import feedback_api as r; r.REMEMBERED = 1; r.main()"


def test_trouble_with_the_model_with_langfuse_and_at_the_end(
    desk: Desk, langfuse: httpx.Client, trouble: Trouble
) -> None:
    known = {row["id"] for row in stored_observations(langfuse)}
    env = {
        "OPENAI_BASE_URL": f"{trouble.url}/v1",
        "LANGFUSE_BASE_URL": trouble.url,
        "LANGFUSE_PUBLIC_KEY": KEYS[0],
        "LANGFUSE_SECRET_KEY": KEYS[1],
    }
    with serving_api(desk, "-c", WITH_LITTLE_MEMORY, **env) as api, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(api.ask)
        assert trouble.asked.wait(PATIENCE)
        down = api.rate(UNKNOWN, rating=4)
        assert down.status_code == 503, "and others are served while a model is slow"
        assert "send it again" in down.json()["detail"]
        trouble.allowed.set()
        first = slow.result()["trace_id"]
        assert api.rate(first, rating=1).status_code == 503
        trouble.takes = "no scores"
        assert api.rate(first, rating=1).status_code == 503
        trouble.takes = "all"
        assert api.rate(first, rating=1).status_code == 200
        assert values(stored_scores(langfuse, first))["user-rating"] == 0

        trouble.model_works = False
        failed = api.client.post("/ask", json=QUESTION)
        assert failed.status_code == 502
        assert failed.json() == {"detail": "The model cannot answer at the moment."}
        trouble.model_works = True
        second = api.ask()["trace_id"]
        assert api.rate(first, rating=4).status_code == 404, "forgotten, and not yet in Langfuse"
        assert api.rate(second, rating=4).status_code == 200

        trouble.asked.clear()
        trouble.allowed.clear()
        last = pool.submit(api.ask)
        assert trouble.asked.wait(PATIENCE)
        address = ("127.0.0.1", api.client.base_url.port or 0)
        with socket.create_connection(address, PATIENCE) as idle:
            idle.sendall(b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert idle.recv(4096), "it is taken"
            api.process.send_signal(signal.SIGTERM)
            while idle.recv(4096):
                pass  # until it hangs up
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, PATIENCE)
        trouble.allowed.set()
        assert last.result()["answer"] == "Two years.", "what had begun is finished"
        _, err = api.process.communicate(timeout=PATIENCE)
    # Ended by the signal itself: nothing ran after the server's own end.
    assert api.process.returncode == -signal.SIGTERM
    assert err.count("\n") == err.count("Feedback is not stored") == 3, err
    assert "no value" in err
    rows = [row for row in stored_observations(langfuse) if row["id"] not in known]
    roots = {row["traceId"]: row["level"] for row in rows if row["name"] == "answer-question"}
    assert {first, second, last.result()["trace_id"]} < roots.keys()
    assert sorted(roots.values()) == ["DEFAULT"] * 3 + ["ERROR"]
    assert [row["name"] for row in rows if row["level"] == "ERROR"] == [
        "answer-question",
        "write-answer",
    ]
