"""The agent's steps are stored once each, under their names, with what they cost and for whom."""

import json
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import KEYS, TOP, Desk, drawn_trees, promised_trees, stored_observations

import local_langfuse
from common.pricing import cost_of

RECIPE = ("-m", "recipes.support_agent")
PROMISED = promised_trees((TOP / "recipes/support_agent.py").read_text())
CALLS = str(PROMISED).count("'generation'")
ASKED_BY = {  # tenant, session, observations
    "ada": ("rotterdam", "chat-1", 10),
    "bob": ("rotterdam", "chat-2", 8),
    "cyd": ("antwerp", "chat-3", 8),
}
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Desk:
    return Desk(tmp_path_factory.mktemp("agent"), vocabulary)


@pytest.fixture(scope="module")
def ran(desk: Desk) -> subprocess.CompletedProcess[str]:
    return desk.run(*RECIPE)


def stored(desk: Desk) -> Rows:
    server = local_langfuse.start(desk.db)
    try:
        with httpx.Client(base_url=server.base_url, auth=KEYS, trust_env=False) as client:
            return stored_observations(client)
    finally:
        server.stop()


@pytest.fixture(scope="module")
def rows(desk: Desk, ran: subprocess.CompletedProcess[str]) -> Rows:
    assert ran.returncode == 0, ran.stderr
    return stored(desk)


def of(rows: Rows, user: str, name: str) -> dict[str, Any]:
    """Return a step of the trace in which the agent served this user."""
    traces = {row["traceId"] for row in rows if row["name"] == "answer-question"}
    found = [row for row in rows if (row["userId"], row["name"]) == (user, name)]
    return next(row for row in found if row["traceId"] in traces)


def test_draws_what_it_stored(
    desk: Desk, ran: subprocess.CompletedProcess[str], rows: Rows
) -> None:
    assert (ran.returncode, ran.stderr) == (0, "")
    assert sorted(drawn_trees(ran.stdout)) == sorted(PROMISED)
    link = ran.stdout.split()[-1]
    assert f":{desk.port}/project/local/traces/" in link
    assert link.rpartition("/")[2] in {row["traceId"] for row in rows}
    assert "Order A-1042 was shipped and arrives on Thursday." in ran.stdout
    roots = [row for row in rows if row["isRootObservation"]]
    assert [root["parentObservationId"] for root in roots] == [None] * len(PROMISED)


def test_says_at_every_step_for_whom_it_ran(rows: Rows) -> None:
    steps = Counter((row["userId"], row["metadata"]["tenant"], row["sessionId"]) for row in rows)
    assert steps == {(user, *who): count for user, (*who, count) in ASKED_BY.items()}


def test_every_call_is_stored_once_with_its_tokens_and_its_cost(rows: Rows) -> None:
    generations = [row for row in rows if row["type"] == "GENERATION"]
    assert len(generations) == CALLS
    for row in generations:
        usage = row["usageDetails"]
        assert row["model"] == "gpt-6-luna"
        assert usage["input"] > 0
        assert usage["output"] > 0
        cost = float(cost_of(row["model"], usage) or 0)
        assert row["costDetails"]["total"] == pytest.approx(cost)


def test_the_decision_and_its_consequence_can_be_read(rows: Rows) -> None:
    for user, way in (("ada", "ask-handbook"), ("bob", "ask-orders"), ("cyd", "ask-orders")):
        assert json.loads(of(rows, user, "choose-specialist")["output"])["goto"] == way
        assert of(rows, user, way)["parentObservationId"]
    found = json.loads(of(rows, "ada", "search-handbook")["output"])
    assert found[0]["metadata"] == {"id": "returns"}
    root = of(rows, "bob", "answer-question")
    assert root["isRootObservation"]
    assert json.loads(root["input"]) == {"question": "Where is my order A-1042?"}
    assert root["output"] == "Order A-1042 was shipped and arrives on Thursday."


def test_no_model_is_asked_for_the_tenant(rows: Rows) -> None:
    offered = json.loads(of(rows, "bob", "choose-tool")["input"])[-1]["content"]["function"]
    assert offered["name"] == "look-up-order"
    assert offered["parameters"]["properties"].keys() == {"order_id"}


def test_a_failure_is_an_error_where_it_happened_and_reaches_the_answer(
    rows: Rows, ran: subprocess.CompletedProcess[str]
) -> None:
    down = "The order system of antwerp does not answer."
    failed = [row for row in rows if row["level"] == "ERROR"]
    assert [(row["userId"], row["name"], row["statusMessage"]) for row in failed] == [
        ("cyd", "look-up-order", down)
    ]
    assert of(rows, "cyd", "answer-question")["output"] == down
    assert f"\n  │     ERROR: {down}\n" in ran.stdout, "the lines of the tree go on beside it"


@contextmanager
def model_server() -> Iterator[tuple[str, list[str]]]:
    """Serve an endpoint that knows no model; yield its address and the paths asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            model = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["model"]
            body = json.dumps({"error": {"message": f"There is no {model}."}}).encode()
            self.send_response(404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
        server.shutdown()


def test_what_the_model_s_service_refuses_is_one_line(desk: Desk, rows: Rows) -> None:
    with model_server() as (url, asked):
        again = desk.run(*RECIPE, OPENAI_BASE_URL=url, OPENAI_MODEL="llama")
    assert set(asked) == {"/v1/chat/completions"}
    assert again.returncode == 1
    assert "There is no llama. Check OPENAI_API_KEY" in again.stderr
    assert again.stderr.count("\n") == 1, again.stderr
    known = {row["id"] for row in rows}
    failed = [row for row in stored(desk) if row["id"] not in known and row["level"] == "ERROR"]
    assert "There is no llama." in "".join(row["statusMessage"] for row in failed)
