"""Questions become SQL, and SQL from a model is run as if an attacker had written it."""

import inspect
import json
import re
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from conftest import KEYS, TOP, Desk, promised_trees, stored_observations, stored_trees

import local_langfuse
from recipes.text_to_sql import create_orders

RECIPE = ("-m", "recipes.text_to_sql")


@dataclass
class Ran:
    """A run of the recipe: what it printed, and what it stored."""

    done: subprocess.CompletedProcess[str]
    observations: list[dict[str, Any]]
    scores: list[dict[str, Any]]

    @property
    def output(self) -> str:
        return self.done.stdout

    def roots(self) -> list[dict[str, Any]]:
        return [row for row in self.observations if row["isRootObservation"]]

    def below(self, root: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the other observations of a trace by name."""
        return {
            row["name"]: row
            for row in self.observations
            if row["traceId"] == root["traceId"] and row["id"] != root["id"]
        }

    def score(self, root: dict[str, Any], name: str) -> list[Any]:
        return [
            score["value"]
            for score in self.scores
            if score["subject"]["id"] == root["traceId"] and score["name"] == name
        ]


@dataclass
class Runs:
    """Two runs on one desk, the traces of the first, and the desk's files at the end."""

    normal: Ran
    hostile: Ran
    trees: list[Any]
    files: dict[str, bytes]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Runs:
    desk = Desk(tmp_path_factory.mktemp("asked"), vocabulary)
    server = local_langfuse.start(desk.db, desk.port)
    client = httpx.Client(base_url=server.base_url, auth=KEYS, trust_env=False)
    seen: set[str] = set()

    def run(**env: str) -> Ran:
        done = desk.run(*RECIPE, **env)
        rows = [row for row in stored_observations(client) if row["traceId"] not in seen]
        seen.update(row["traceId"] for row in rows)
        query: dict[str, str | int] = {"limit": 100, "fields": "subject"}
        scores = client.get("/api/public/v3/scores", params=query).json()["data"]
        return Ran(done, rows, scores)

    normal = run()
    trees = stored_trees(client)
    with model_that_says(HOSTILE) as url:
        hostile = run(OPENAI_BASE_URL=url, OPENAI_MODEL="mine")
    client.close()
    server.stop()
    files = {path.name: path.read_bytes() for path in desk.folder.iterdir()}
    return Runs(normal, hostile, trees, files)


@pytest.fixture(scope="module")
def ran(runs: Runs) -> Ran:
    assert (runs.normal.done.returncode, runs.normal.done.stderr) == (0, "")
    return runs.normal


def asked(ran: Ran, question: str) -> dict[str, Any]:
    [root] = [root for root in ran.roots() if root["input"] == question]
    return root


def test_stores_the_traces_it_promises(ran: Ran, runs: Runs) -> None:
    promised = promised_trees((TOP / "recipes/text_to_sql.py").read_text())
    assert sorted(runs.trees) == sorted(promised)
    assert {root["parentObservationId"] for root in ran.roots()} == {None}
    link = ran.output.split()[-1]
    assert link.rpartition("/")[2] in {root["traceId"] for root in ran.roots()}


def test_a_cached_question_runs_the_same_sql_without_the_model(ran: Ran) -> None:
    first = asked(ran, "How many orders were returned?")
    again = asked(ran, "how many orders  were returned")
    assert ("sql:model" in first["tags"], "sql:cache" in again["tags"]) == (True, True)
    assert set(ran.below(first)) == {"write-sql", "run-sql"}
    assert set(ran.below(again)) == {"run-sql"}
    assert ran.below(again)["run-sql"]["input"] == ran.below(first)["run-sql"]["input"]
    assert again["output"] == first["output"]
    assert json.loads(again["output"])["rows"] == [[41]]


def test_what_failed_is_not_cached(ran: Ran) -> None:
    for root in ran.roots():
        if "sql:cache" in root["tags"]:
            assert root["level"] == "DEFAULT"


def test_every_observation_says_on_whose_behalf(ran: Ran) -> None:
    teams = {"support": 2, "sales": 3, "logistics": 2}
    for row in ran.observations:
        facts = row["metadata"]
        assert f"team:{facts['team']}" in row["tags"]
        assert (facts["database"], facts["table_count"]) == ("orders.db", "3")
        assert facts["cached"] == str("sql:cache" in row["tags"]).lower()
        if row["isRootObservation"]:
            teams[facts["team"]] -= 1
            assert facts["query_length"] == str(len(row["input"]))
            assert int(facts["sql_length"]) == len(json.loads(row["output"])["sql"])
    assert set(teams.values()) == {0}


def test_every_trace_says_whether_its_sql_ran(ran: Ran) -> None:
    seen = set()
    for root in ran.roots():
        query = ran.below(root)["run-sql"]
        failed = query["level"] == "ERROR"
        assert ran.score(root, "sql_execution_success") == [not failed]
        assert root["level"] == query["level"]
        if failed:
            assert query["statusMessage"] == "not authorized"
            assert f"    {query['input']}\n" in ran.output.split("The SQL that failed")[1]
        seen.add(failed)
    assert seen == {True, False}


def test_a_thumb_tells_a_wrong_answer_from_a_right_one(ran: Ran) -> None:
    right, wrong = (
        asked(ran, question)
        for question in ("What is our revenue in euros?", "How many orders were placed in March?")
    )
    assert ran.score(right, "user-thumbs") == [True]
    assert ran.score(wrong, "user-thumbs") == [False]
    assert ran.score(wrong, "sql_execution_success") == [True]
    assert re.search(r"placed in March\? +30 +down", ran.output)


def test_the_report_adds_up_what_is_stored(ran: Ran) -> None:
    reported = dict(re.findall(r"^  (\w+:\w+) +(\d+ +\d+ +\$[\d.]+)", ran.output, re.MULTILINE))
    tags = {tag for row in ran.observations for tag in row["tags"]}
    assert reported.keys() == tags
    for tag, told in reported.items():
        rows = [row for row in ran.observations if tag in row["tags"]]
        calls = [row for row in rows if row["type"] == "GENERATION"]
        usd = sum(Decimal(str(row["costDetails"]["total"])) for row in calls)
        roots = [row for row in rows if row["isRootObservation"]]
        *counts, shown = told.split()
        assert counts == [str(len(roots)), str(len(calls))]
        assert abs(Decimal(shown.strip("$")) - usd) <= Decimal("0.0000005")
    assert reported["sql:cache"].split() == ["2", "0", "$0.000000"]


# --- What an attacker would have the model write -----------------------------------------

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT {} FROM n"
REFUSED = {
    "INSERT INTO orders (pairs) VALUES (1)": "not authorized",
    "UPDATE products SET price = 0": "not authorized",
    "DELETE FROM orders RETURNING *": "not authorized",
    "WITH x AS (SELECT 1) DELETE FROM orders": "not authorized",
    "DROP TABLE orders": "not authorized",
    "CREATE TEMP TABLE mine (a)": "not authorized",
    "CREATE VIRTUAL TABLE mine USING fts5(a)": "not authorized",
    "ATTACH 'other.db' AS other": "not authorized",
    "ATTACH ':memory:' AS other": "not authorized",
    "VACUUM INTO 'copy.db'": "authorization denied",
    "PRAGMA writable_schema = 1": "not authorized",
    "SELECT * FROM pragma_database_list": "not authorized",
    "BEGIN EXCLUSIVE": "not authorized",
    "SELECT load_extension('evil.so')": "not authorized",
    "SELECT 1; DROP TABLE orders": "one statement at a time",
    "SELECT 1 FROM orders WHERE status = ''; DROP TABLE orders; --'": "one statement at a time",
    ENDLESS.format("count(*)"): "interrupted",
    ENDLESS.format("group_concat(i)"): "interrupted|too big",
    "SELECT zeroblob(1000000000)": "too big",
    f"SELECT '{'x' * 20_000}'": "too big|too large",
    "SELECT 1 LIKE replace(hex(zeroblob(400)), '00', '%0')": "too complex",
    "": "not a query",
    "-- nothing": "not a query",
    "SELECT missing FROM orders": "no such column",
    "SELECT CAST(x'ff' AS TEXT)": "UTF-8",
    "SELECT 1\0": "null character",
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("a shop? #1") / "orders.db"
    create_orders(path)
    return path


@pytest.mark.parametrize("sql", REFUSED, ids=lambda sql: sql[:40] or "empty")
def test_harm_is_refused(sql: str, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recipes.text_to_sql import fetch_rows

    monkeypatch.chdir(shop.parent)
    before = shop.read_bytes()
    with pytest.raises(sqlite3.Error, match=REFUSED[sql]):
        fetch_rows(shop, sql, seconds=0.1)
    assert shop.read_bytes() == before
    assert list(shop.parent.iterdir()) == [shop]


def test_a_cached_query_that_fails_is_asked_for_again(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recipes import text_to_sql

    nothing = {name: lambda **_: None for name in ("update_current_span", "get_current_trace_id")}
    span = SimpleNamespace(**nothing)
    monkeypatch.setattr(text_to_sql, "get_client", lambda: span)
    monkeypatch.setattr(text_to_sql, "run_sql", text_to_sql.fetch_rows)
    untraced = inspect.unwrap(text_to_sql.answer_question)
    key = text_to_sql.cache_key("How many?", text_to_sql.read_schema(shop))
    cache = {key: "SELECT count(*) FROM orders"}
    nobody: Any = None
    assert untraced(nobody, shop, cache, "sales", "How many?").rows == [(365,)]
    assert cache == {key: "SELECT count(*) FROM orders"}
    cache[key] = "SELECT gone FROM orders"
    failed = untraced(nobody, shop, cache, "sales", "How many?")
    assert (failed.rows, failed.error) == ([], "no such column: gone")
    assert cache == {}


def test_what_only_reads_is_allowed(shop: Path) -> None:
    from recipes.text_to_sql import MAX_ROWS, fetch_rows

    assert fetch_rows(shop, "SELECT count(*) FROM orders;") == [(365,)]
    assert fetch_rows(shop, ENDLESS.format("i"))[-1] == (MAX_ROWS,)
    month = "SELECT strftime('%m', max(ordered_on)) FROM orders, customers"
    assert fetch_rows(shop, month) == [("12",)]


def test_the_file_is_protected_even_without_the_authorizer(shop: Path) -> None:
    from recipes.text_to_sql import open_guarded

    with closing(open_guarded(shop, 10)) as connection:
        connection.set_authorizer(None)
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            connection.execute("DELETE FROM orders")


def test_spellings_share_a_key_and_schemas_do_not() -> None:
    from recipes.text_to_sql import cache_key

    assert cache_key("How  many\torders? ", ["a"]) == cache_key("how many orders", ["a"])
    assert cache_key("how many", ["a"]) != cache_key("how many", ["b"])
    assert cache_key("how many orders", ["a"]) != cache_key("how many", ["a"])


@contextmanager
def model_that_says(replies: list[str]) -> Iterator[str]:
    """Serve OpenAI's chat protocol on loopback: one reply after the other, then a refusal."""
    waiting = iter(replies)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            reply = next(waiting, None)
            message = {"role": "assistant", "content": reply}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            usage = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
            head = {"id": "1", "object": "chat.completion", "created": 1, "model": "mine"}
            body = json.dumps({**head, "choices": [choice], "usage": usage}).encode()
            self.send_response(404 if reply is None else 200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


HOSTILE = [
    "SELECT 41;",
    "DROP TABLE orders",
    "SELECT char(27) || '[2J', x'00ff', 9e999",
    "Here it is:\n```sql\nSELECT 'Bob'\n```",
    "SELECT \ud800",
]


def test_a_hostile_model_changes_nothing(runs: Runs, shop: Path) -> None:
    assert runs.files["orders.db"] == shop.read_bytes()
    assert {name.partition("-")[0] for name in runs.files} == {"langfuse.db", "orders.db"}


def test_what_a_hostile_model_writes_is_stored_and_scored(runs: Runs) -> None:
    roots = runs.hostile.roots()
    success = {root["input"]: runs.hostile.score(root, "sql_execution_success") for root in roots}
    assert list(success.values()) == [[True], [False], [True], [True], [True], [False], []]
    assert "sql:cache" in roots[2]["tags"]
    assert "sql:model" in roots[5]["tags"]  # asked again, because its SQL failed before
    fenced = asked(runs.hostile, "Which customers live in Delft?")
    assert json.loads(fenced["output"]) == {"sql": "SELECT 'Bob'", "rows": [["Bob"]]}
    assert runs.hostile.score(fenced, "user-thumbs") == [True]


def test_a_model_that_refuses_is_one_line(runs: Runs) -> None:
    assert runs.hostile.done.returncode == 1
    assert runs.hostile.done.stderr.count("\n") == 1
    assert "OPENAI_MODEL" in runs.hostile.done.stderr
    root = runs.hostile.roots()[-1]
    assert root["level"] == runs.hostile.below(root)["write-sql"]["level"] == "ERROR"
    assert runs.hostile.score(root, "user-thumbs") == []


def test_a_cost_without_a_price_is_unknown(runs: Runs) -> None:
    from langfuse.api import ObservationV2
    from langfuse.api.core.pydantic_utilities import parse_obj_as

    from recipes.text_to_sql import cost_by_tag

    rows = cost_by_tag(parse_obj_as(list[ObservationV2], runs.hostile.observations))
    assert rows[:2] == [("sql:cache", 1, 0, "$0.000000"), ("sql:model", 6, 6, "unknown")]


def test_what_steers_a_terminal_is_shown_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    from common import console

    console.show_table(("answer",), [("\x1b[2J [red]41[/red]",)])
    console.show_answer("near \x1b[31m", "SELECT '\x1b[31m'")
    shown = capsys.readouterr().out
    assert "[2J [red]41[/red]" in shown
    assert "SELECT '[31m'" in shown
    assert "\x1b" not in shown
