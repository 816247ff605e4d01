"""Feedback over real HTTP: what is accepted is stored, what is not accepted says why."""

import gzip
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from conftest import KEYS, TOP, Desk, promised_trees, stored_observations, stored_trees

from common.readback import poll

RECIPE = ("-m", "recipes.feedback_api")
REFUSING = str(Path(__file__).parent / "refuse_sockets")
PROMISED = promised_trees((TOP / "recipes/feedback_api.py").read_text())
QUESTION = {"question": "How long is the warranty?"}
UNKNOWN = "0123456789abcdef" * 2


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
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err


@contextmanager
def serving_api(desk: Desk, *command: str, **env: str) -> Iterator[Api]:
    """Run the recipe on a free port until the block ends."""
    process = subprocess.Popen(
        [sys.executable, *(command or RECIPE), "--port", "0"],
        cwd=TOP,
        env=desk.environment(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        found = next(filter(None, (re.search(r"http://[\d.:]+(?=/ask)", line) for line in lines)))
        with httpx.Client(base_url=found[0], timeout=20, trust_env=False) as client:
            yield Api(process, client)
    finally:
        process.kill()
        process.communicate()


@dataclass
class Story:
    """A day of the server: rated, Langfuse gone and back, ended by SIGTERM."""

    answered: list[dict[str, Any]] = field(default_factory=list)
    replies: dict[str, httpx.Response] = field(default_factory=dict)
    stored_early: int = -1
    early_scores: list[dict[str, Any]] = field(default_factory=list)
    ended: tuple[int, str, str] = (-1, "", "")
    trees: list[Any] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    scores: list[dict[str, Any]] = field(default_factory=list)

    def trace(self, number: int) -> str:
        return str(self.answered[number]["trace_id"])


def stored_scores(client: httpx.Client) -> list[dict[str, Any]]:
    answer = client.get("/api/public/v3/scores", params={"fields": "details,subject", "limit": 100})
    answer.raise_for_status()
    return list(answer.json()["data"])


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Desk:
    return Desk(tmp_path_factory.mktemp("feedback"), vocabulary)


@pytest.fixture(scope="module")
def langfuse(desk: Desk) -> Iterator[httpx.Client]:
    """A client of the local Langfuse on the desk's port, running or not."""
    url = f"http://127.0.0.1:{desk.port}"
    with httpx.Client(base_url=url, auth=KEYS, timeout=10, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def story(desk: Desk, langfuse: httpx.Client) -> Iterator[Story]:
    """Let it happen once; the tests below read what came of it."""
    told = Story()
    with ExitStack() as ends:
        with desk.serving():
            # Nothing is sent before the end: what was answered is known to the process alone.
            api = ends.enter_context(serving_api(desk, LANGFUSE_FLUSH_INTERVAL="600"))
            with ThreadPoolExecutor(8) as pool:
                told.answered = list(pool.map(lambda _: api.ask(), range(8)))
            told.replies["stars"] = api.rate(told.trace(0), rating=4, comment="<b>clear</b>")
            told.replies["thumb"] = api.rate(told.trace(1), thumbs="up")
            told.replies["again"] = api.rate(told.trace(1), rating=3)
            told.stored_early = len(stored_observations(langfuse))
            told.early_scores = stored_scores(langfuse)
        told.replies["down"] = api.rate(told.trace(2), rating=1)
        told.replies["down, unknown"] = api.rate(UNKNOWN, rating=1)
        ends.enter_context(desk.serving())
        told.replies["up again"] = api.rate(told.trace(2), rating=1)
        with ThreadPoolExecutor(5) as pool:  # up to the last moment
            last = list(pool.map(lambda n: api.rate(told.trace(n), rating=5), range(3, 8)))
        told.ended = api.end(signal.SIGTERM)
        assert [reply.status_code for reply in last] == [200] * 5
        told.trees, told.rows = stored_trees(langfuse), stored_observations(langfuse)
        told.scores = stored_scores(langfuse)
        yield told


def opinions(scores: list[dict[str, Any]], trace_id: str) -> dict[str, Any]:
    return {row["name"]: row["value"] for row in scores if row["subject"]["id"] == trace_id}


def test_an_answer_has_the_id_of_its_trace(story: Story) -> None:
    assert len({story.trace(n) for n in range(8)}) == 8
    assert all("two years" in each["answer"] for each in story.answered)
    assert story.stored_early == 0, "no trace was stored when these opinions came"
    assert {story.replies[each].status_code for each in ("stars", "thumb", "again")} == {200}


def test_an_opinion_is_stored_when_it_is_accepted(story: Story) -> None:
    first = opinions(story.early_scores, story.trace(0))
    assert first == {"user-rating": 0.75, "user-satisfaction": "satisfied"}
    assert story.replies["stars"].json() == {"rating": 0.75, "satisfaction": "satisfied"}
    for row in story.early_scores:
        assert row["id"] == f"{row['subject']['id']}-{row['name']}"
        assert row["environment"] == "development"
    kinds = {row["name"]: row["dataType"] for row in story.early_scores}
    assert kinds == {"user-rating": "NUMERIC", "user-satisfaction": "CATEGORICAL"}
    comments = [r["comment"] for r in story.early_scores if r["subject"]["id"] == story.trace(0)]
    assert comments == ["<b>clear</b>"] * 2


def test_without_langfuse_feedback_is_refused_and_can_be_sent_again(story: Story) -> None:
    for each in ("down", "down, unknown"):
        assert story.replies[each].status_code == 503
        assert "send it again" in story.replies[each].json()["detail"]
    assert story.replies["up again"].status_code == 200
    assert opinions(story.scores, story.trace(2))["user-rating"] == 0


def test_sigterm_loses_nothing_that_was_accepted(desk: Desk, story: Story) -> None:
    status, out, err = story.ended
    assert status == 0
    assert err.count("\n") == err.count("Feedback is not stored") == 2, err
    assert story.trees == PROMISED * 8
    assert {row["traceId"] for row in story.rows} == {story.trace(n) for n in range(8)}
    assert len(story.scores) == 16
    link = out.split()[-1]
    assert link.startswith(f"http://127.0.0.1:{desk.port}/project/local/traces/")
    assert link.rpartition("/")[2] in {story.trace(n) for n in range(8)}


def test_the_root_is_the_question_and_its_answer(story: Story) -> None:
    for row in story.rows:
        if row["name"] == "answer-question":
            assert row["input"] == QUESTION["question"]
            assert row["output"] == story.answered[0]["answer"]
        else:
            assert row["costDetails"]["total"] > 0


@pytest.fixture(scope="module")
def later(desk: Desk, story: Story) -> Iterator[Api]:
    """The server after a restart, which remembers nothing, with a model that does not exist."""
    assert story.ended[0] == 0
    with serving_api(desk, OPENAI_MODEL="gpt-4o-minni") as api:
        yield api


def test_a_second_opinion_replaces_the_first(
    later: Api, langfuse: httpx.Client, story: Story
) -> None:
    before = {row["id"]: row for row in stored_scores(langfuse)}
    assert later.rate(story.trace(0), thumbs="down").status_code == 200
    after = {row["id"]: row for row in stored_scores(langfuse)}
    assert after.keys() == before.keys()
    assert opinions(list(after.values()), story.trace(0)) == {
        "user-rating": 0,
        "user-satisfaction": "unsatisfied",
    }
    roots = {row["traceId"]: row["startTime"] for row in story.rows if row["isRootObservation"]}
    for name in ("user-rating", "user-satisfaction"):
        row = after[f"{story.trace(0)}-{name}"]
        assert row["comment"] == "(no comment)", "the old comment is gone"
        # Langfuse replaces a score of the same day only: the day of the trace.
        assert row["timestamp"][:19] == roots[story.trace(0)][:19]


def test_a_trace_looked_up_gives_a_score_the_same_time_as_one_remembered(
    later: Api, langfuse: httpx.Client, story: Story
) -> None:
    rating = f"{story.trace(4)}-user-rating"
    [remembered] = [row["timestamp"] for row in stored_scores(langfuse) if row["id"] == rating]
    # The stand-in keeps the time of a score that it has.
    assert langfuse.delete(f"/api/public/scores/{rating}").is_success
    assert later.rate(story.trace(4), rating=2).status_code == 200
    assert remembered in [
        row["timestamp"] for row in stored_scores(langfuse) if row["id"] == rating
    ]


def test_an_unknown_trace_is_404(later: Api) -> None:
    reply = later.rate(UNKNOWN, rating=4)
    assert (reply.status_code, reply.json()) == (
        404,
        {"detail": "There is no answer with this trace id."},
    )


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
def test_bad_input_is_422_and_is_not_repeated(later: Api, body: str) -> None:
    headers = {"content-type": "application/json"}
    reply = later.client.post("/feedback", content=body, headers=headers)
    assert reply.status_code == 422, reply.text
    assert all(each["why"] for each in reply.json()["detail"])
    assert "xxx" not in reply.text


def test_a_page_of_another_site_gets_nothing(later: Api) -> None:
    ask = later.client.post
    body = json.dumps(QUESTION)
    # A page may send this without asking the browser first; JSON it may not.
    assert ask("/ask", content=body, headers={"content-type": "text/plain"}).status_code == 422
    assert ask("/ask", json=QUESTION, headers={"host": "shop.example"}).status_code == 400
    reply = ask("/ask", json=QUESTION, headers={"origin": "http://shop.example"})
    assert "access-control-allow-origin" not in reply.headers


def test_a_model_that_fails_is_502_and_an_error_in_the_trace(
    desk: Desk, later: Api, langfuse: httpx.Client
) -> None:
    known = len(stored_observations(langfuse))
    reply = later.client.post("/ask", json=QUESTION)
    assert reply.status_code == 502
    assert reply.json() == {"detail": "The model cannot answer at the moment."}
    assert desk.run(*RECIPE, "--port", str(later.client.base_url.port)).returncode == 2
    assert later.end(signal.SIGINT)[0] == 0
    failed = stored_observations(langfuse)[known:]
    assert {row["name"] for row in failed} == {"answer-question", "write-answer"}
    assert {row["level"] for row in failed} == {"ERROR"}


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


class Held(BaseHTTPRequestHandler):
    """A model that answers when it is allowed to, and a Langfuse that refuses every score."""

    asked, allowed = threading.Event(), threading.Event()
    traces: ClassVar[list[bytes]] = []
    refusal: ClassVar[Any] = {"accepted": 1, "rejected": 1, "errors": [{"message": "no value"}]}
    said: ClassVar[Any] = {"index": 0, "message": {"role": "assistant", "content": "Two years."}}

    def do_GET(self) -> None:
        self.reply(200, {"data": [], "meta": {}})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/scores"):
            self.reply(207, self.refusal)
        elif self.path.endswith("/traces"):
            self.traces.append(body)
            self.reply(200, {})
        else:
            self.asked.set()
            self.allowed.wait(20)
            self.reply(200, {"id": "1", "created": 1, "model": "m", "choices": [self.said]})

    def reply(self, status: int, content: Any) -> None:
        packed = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(packed)))
        self.end_headers()
        self.wfile.write(packed)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def held() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Held) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


# Nothing but the application: SIGTERM ends this process without Python's own clean-up.
AS_A_PRODUCT_RUNS_IT = """
import uvicorn
from recipes import feedback_api as recipe

recipe.KEPT = 1
listening = recipe.listen(0)
recipe.connect()
print(f"http://127.0.0.1:{listening.getsockname()[1]}/ask", flush=True)
uvicorn.Server(uvicorn.Config(recipe.APP, log_level="warning")).run(sockets=[listening])
"""


def is_closed(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_slow_model_a_full_memory_and_a_refused_score(desk: Desk, held: str) -> None:
    with (
        serving_api(
            desk,
            *("-c", AS_A_PRODUCT_RUNS_IT),
            OPENAI_BASE_URL=f"{held}/v1",
            LANGFUSE_BASE_URL=held,
            LANGFUSE_PUBLIC_KEY="pk-lf-1234567890ab",
            LANGFUSE_SECRET_KEY="sk-lf-1234567890ab",
            LANGFUSE_FLUSH_INTERVAL="600",
        ) as api,
        ThreadPoolExecutor(1) as pool,
    ):
        slow = pool.submit(api.ask)
        assert Held.asked.wait(20)
        assert api.rate(UNKNOWN, rating=4).status_code == 404, "others are served meanwhile"
        Held.allowed.set()
        first = slow.result()["trace_id"]
        second = api.ask()["trace_id"]
        assert api.rate(first, rating=4).status_code == 404, "forgotten, and not yet in Langfuse"
        assert api.rate(second, rating=4).status_code == 503, "known, and refused"

        for event in (Held.asked, Held.allowed):
            event.clear()
        last = pool.submit(api.ask)
        assert Held.asked.wait(20)
        api.process.send_signal(signal.SIGTERM)
        port = api.client.base_url.port or 0
        assert poll(lambda: is_closed(port), until=bool), "it takes no more requests"
        Held.allowed.set()
        assert last.result()["answer"] == "Two years.", "what had begun is finished"
        _, err = api.process.communicate(timeout=20)
    assert api.process.returncode == -signal.SIGTERM
    assert err.count("\n") == 1
    assert "no value" in err
    sent = b"".join(gzip.decompress(body) for body in Held.traces)
    for trace_id in (first, second, last.result()["trace_id"]):
        assert bytes.fromhex(trace_id) in sent, "the trace was flushed at the end"
