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

import httpx2
import pytest
from conftest import (
    TOP,
    Desk,
    drawn_trees,
    promised_trees,
    stored_observations,
    stored_trees,
)

from common.offline_model import OfflineTransport
from common.pricing import cost_of

RECIPE = ("-m", "recipes.support_agent")
PROMISED = promised_trees((TOP / "recipes/support_agent.py").read_text())
TENANTS = {"ada": "rotterdam", "bob": "rotterdam", "cyd": "rotterdam", "dan": "antwerp"}
CALLS = str(PROMISED).count("'generation'")
REFUSING = str(Path(__file__).parent / "refuse_sockets")
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Desk:
    return Desk(tmp_path_factory.mktemp("agent"), vocabulary)


@pytest.fixture(scope="module")
def ran(desk: Desk) -> subprocess.CompletedProcess[str]:
    return desk.run(*RECIPE)


@pytest.fixture(scope="module")
def rows(desk: Desk, ran: subprocess.CompletedProcess[str]) -> Rows:
    assert ran.returncode == 0, ran.stderr
    with desk.serving() as client:
        return stored_observations(client)


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


def test_says_at_every_step_for_whom_it_ran(rows: Rows) -> None:
    assert Counter(row["userId"] for row in rows) == {"ada": 10, "bob": 8, "cyd": 8, "dan": 6}
    for row in rows:
        assert row["metadata"]["tenant"] == TENANTS[row["userId"]], row["name"]
        assert row["sessionId"] == f"{row['userId']}-{row['traceId'][:8]}", row["name"]


def test_every_generation_has_its_tokens_and_its_cost(rows: Rows) -> None:
    generations = [row for row in rows if row["type"] == "GENERATION"]
    assert len(generations) == CALLS
    for row in generations:
        usage = row["usageDetails"]
        assert row["model"] == "gpt-4o-mini-2024-07-18"
        assert usage["input"] > 0
        assert usage["output"] > 0
        assert {"input_cache_read", "output_reasoning"} < usage.keys(), "LangChain's names"
        assert row["costDetails"]["total"] == pytest.approx(
            float(cost_of(row["model"], usage) or 0)
        )


def test_the_decision_and_its_consequence_can_be_read(rows: Rows) -> None:
    for user, way in (("ada", "ask-handbook"), ("bob", "ask-orders"), ("dan", "ask-orders")):
        assert json.loads(of(rows, user, "choose-specialist")["output"])["goto"] == way
        assert of(rows, user, way)["parentObservationId"]
    found = json.loads(of(rows, "ada", "search-handbook")["output"])
    assert found[0]["metadata"] == {"id": "returns"}
    root = of(rows, "bob", "answer-question")
    assert root["isRootObservation"]
    assert json.loads(root["input"]) == {"question": "Where is my order A-1042?"}
    assert json.loads(root["output"]) == {
        "answer": "Order A-1042 was shipped and arrives on Thursday."
    }


def test_no_model_is_asked_for_the_tenant(rows: Rows) -> None:
    offered = json.loads(of(rows, "bob", "choose-tool")["input"])[-1]["content"]["function"]
    assert offered["name"] == "look-up-order"
    assert offered["parameters"]["properties"].keys() == {"order_id"}


def test_a_failure_is_an_error_where_it_happened(rows: Rows) -> None:
    failed = {(row["userId"], row["name"]): row["statusMessage"] for row in rows if is_error(row)}
    down = "The order system of antwerp does not answer."
    assert failed == {
        ("cyd", "look-up-order"): "There is no order A-9999.",
        ("dan", "look-up-order"): down,
        ("dan", "ask-orders"): down,
        ("dan", "answer-question"): down,
    }


def is_error(row: dict[str, Any]) -> bool:
    return bool(row["level"] == "ERROR")


def test_tracing_off_opens_no_socket(
    tmp_path: Path, vocabulary: Path, ran: subprocess.CompletedProcess[str]
) -> None:
    desk, refused = Desk(tmp_path, vocabulary), tmp_path / "refused"
    off = desk.run(
        *RECIPE,
        LANGFUSE_TRACING_ENABLED="false",
        PYTHONPATH=REFUSING,
        REFUSE_SOCKETS="all",
        REFUSED_SOCKETS_FILE=str(refused),
    )
    assert (off.returncode, off.stderr) == (0, "")
    assert not refused.exists(), refused.read_text()
    assert not desk.db.exists()
    said = ran.stdout[ran.stdout.index("Answered at") : ran.stdout.index("What was stored")]
    assert said.strip() in off.stdout


@contextmanager
def model_server() -> Iterator[tuple[str, list[str]]]:
    """Serve the offline model over HTTP; yield its address and the paths asked for."""
    asked: list[str] = []
    model = httpx2.Client(transport=OfflineTransport())

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = model.post(f"https://offline.invalid{self.path}", content=body)
            self.send_response(answer.status_code)
            self.send_header("Content-Type", answer.headers["content-type"])
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, model:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
        server.shutdown()


def test_each_call_of_a_real_endpoint_is_stored_once(desk: Desk, rows: Rows) -> None:
    with desk.serving() as client, model_server() as (url, asked):
        again = desk.run(*RECIPE, OPENAI_BASE_URL=url)
        assert (again.returncode, again.stderr) == (0, "")
        assert sorted(stored_trees(client)) == sorted(PROMISED * 2), "a second run only adds"
        known = {row["id"] for row in rows}
        new = [row for row in stored_observations(client) if row["id"] not in known]
    assert Counter(row["type"] for row in new)["GENERATION"] == len(asked) == CALLS


def test_beside_langfuse_openai_each_call_would_be_stored_twice(
    tmp_path: Path, vocabulary: Path
) -> None:
    desk = Desk(tmp_path, vocabulary)
    code = (
        "import langfuse.openai, runpy;"
        "runpy.run_module('recipes.support_agent', run_name='__main__')"
    )
    with desk.serving() as client:
        assert desk.run("-c", code).returncode == 0
        trees = Counter(name for name, _, _ in stored_trees(client))
    assert trees == {"answer-question": 4, "answer-briefly": 1, "OpenAI-generation": CALLS}


def test_a_model_that_does_not_exist_is_one_line(tmp_path: Path, vocabulary: Path) -> None:
    ran = Desk(tmp_path, vocabulary).run(*RECIPE, OPENAI_MODEL="gpt-4o-minni")
    assert ran.returncode == 1
    assert "The model `gpt-4o-minni` does not exist" in ran.stderr
    assert ran.stderr.count("\n") == 1, ran.stderr
