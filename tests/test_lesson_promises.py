"""What lessons 3 to 5 promise beyond running: read back from where they stored it."""

import asyncio
import csv
import importlib
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest
from conftest import TOP, Desk, stored_observations, stored_trees

from common import traffic

rag = importlib.import_module("03_trace_rag_pipeline")
cost = importlib.import_module("04_cost_monitoring")


@contextmanager
def edited(desk: Desk, lesson: str, *edits: tuple[str, str]) -> Iterator[str]:
    """Write a copy of a lesson with edits, beside the desk, and yield the path to run."""
    source = (TOP / lesson).read_text()
    for old, new in edits:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    copy = desk.folder / lesson
    copy.write_text(source)
    yield str(copy)


def run(desk: Desk, lesson: str, *edits: tuple[str, str], **env: str) -> Any:
    with edited(desk, lesson, *edits) as copy:
        return desk.run(copy, PYTHONPATH=str(TOP), **env)


# --- Lesson 3 -----------------------------------------------------------------------------


def test_without_a_copy_of_the_context_the_searches_lose_their_trace(desk: Desk) -> None:
    ran = run(
        desk,
        "03_trace_rag_pipeline.py",
        ("pool.submit(contextvars.copy_context().run, each, query)", "pool.submit(each, query)"),
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    with desk.serving() as client:
        shapes = stored_trees(client)
    orphans = [tree for tree in shapes if tree[0] in ("search-by-words", "search-by-meaning")]
    assert len(orphans) == 10, "each search of five questions is a trace of its own"
    answered = [tree for tree in shapes if tree[0] == "answer-from-handbook"]
    assert all(("find-passages", "retriever", ()) in tree[2] for tree in answered)


def test_the_prompt_is_created_once_and_linked_to_its_generation(desk: Desk) -> None:
    desk.run("03_trace_rag_pipeline.py")
    desk.run("03_trace_rag_pipeline.py")
    with desk.serving() as client:
        [prompt] = client.get("/api/public/v2/prompts").json()["data"]
        assert (prompt["name"], prompt["versions"]) == ("answer-from-handbook", [1])
        written = [n for n in stored_observations(client) if n["name"] == "write-answer"]
        assert {(n["promptName"], n["promptVersion"]) for n in written} == {
            ("answer-from-handbook", 1)
        }


def test_only_the_step_that_failed_is_an_error(desk: Desk) -> None:
    ran = desk.run("03_trace_rag_pipeline.py")
    with desk.serving() as client:
        failed = [n for n in stored_observations(client) if n["level"] == "ERROR"]
    assert [n["name"] for n in failed] == ["search-archive"]
    assert failed[0]["statusMessage"] in ran.stdout
    assert "cannot be searched at the moment" in ran.stdout


def test_an_abstention_has_a_low_grounding_and_an_answer_a_high_one(desk: Desk) -> None:
    desk.run("03_trace_rag_pipeline.py")
    with desk.serving() as client:
        scores = client.get("/api/public/v3/scores", params={"name": "grounding"}).json()["data"]
        roots = [n for n in stored_observations(client) if n["name"] == "answer-from-handbook"]
    assert sum("does not say" in n["output"] for n in roots) == 1
    assert sorted(score["value"] for score in scores) == [0, 1, 1, 1, 1]


def test_the_slowest_step_is_computed_from_what_is_stored(desk: Desk) -> None:
    ran = desk.run("03_trace_rag_pipeline.py")
    shown = re.findall(r"^  ([a-z-]+) +p95 ([\d,]+) ms$", ran.stdout, flags=re.MULTILINE)
    milliseconds = [int(ms.replace(",", "")) for _, ms in shown]
    assert milliseconds == sorted(milliseconds, reverse=True)
    with desk.serving() as client:
        steps = [n for n in stored_observations(client) if n["sessionId"] and n["type"] != "CHAIN"]
    assert {name for name, _ in shown} == {n["name"] for n in steps}
    slowest = max(steps, key=lambda n: n["latency"] or 0)
    assert slowest["name"] in {name for name, _ in shown[:2]}


def test_the_searches_of_lesson_3_rank_what_was_asked_for() -> None:
    rankings = [["a", "b", "c"], ["b", "d", "a"]]
    assert rag.rank_passages.__wrapped__(rankings)[0] == "b"


# --- Lesson 4 -----------------------------------------------------------------------------


def test_a_report_that_disagrees_with_the_ledger_ends_in_red_with_exit_1(desk: Desk) -> None:
    ran = run(
        desk,
        "04_cost_monitoring.py",
        (
            "            self.usd[model] += cost\n",
            '            self.usd[model] += cost * Decimal("1.001")\n',
        ),
    )
    assert ran.returncode == 1
    assert "do not agree" in ran.stderr
    assert re.search(r"the ledger has \$0\.\d+, Langfuse \$0\.\d+", ran.stdout)


def test_a_billionth_of_a_dollar_is_the_limit_of_agreement() -> None:
    ledger = cost.Ledger()
    ledger.usd["gpt-4o"] = Decimal("0.001")
    near, far = Decimal("0.0010000009"), Decimal("0.00100001")
    assert cost.differences(ledger, {"gpt-4o": near}) == []
    for stored in ({"gpt-4o": far}, {}):
        assert {row[0] for row in cost.differences(ledger, stored)} == {"gpt-4o", "total"}


def test_the_report_is_what_the_stored_calls_add_up_to(desk: Desk) -> None:
    ran = desk.run("04_cost_monitoring.py")
    with desk.serving() as client:
        nodes = [n for n in stored_observations(client) if "run" in n["metadata"]]
    calls = [n for n in nodes if n["type"] == "GENERATION"]
    by_user: dict[str, float] = {}
    for call in calls:
        user = call["userId"] or "unknown"
        by_user[user] = by_user.get(user, 0) + call["totalCost"]
    for user, usd in by_user.items():
        if user == "unknown":
            continue  # the teams have such a row, too
        shown = re.search(rf"^  {user} +\$([\d.]+) ", ran.stdout, flags=re.MULTILINE)
        assert shown or not usd, user
        assert not shown or float(shown[1]) == pytest.approx(usd, abs=1e-6)
    cached = [n for n in nodes if n["name"] == "answer-from-cache"]
    assert f"{len(cached)} of 300" in ran.stdout
    unknown = [n for n in calls if not n["costDetails"]]
    assert {n["model"] for n in unknown} == {"shop-topics"}
    assert f"{len(unknown)} calls of shop-topics" in ran.stdout
    failed = [n for n in calls if n["level"] == "ERROR"]
    assert f"{len(failed)} of {len(calls)} calls" in ran.stdout
    buckets = {bucket for n in calls for bucket, count in n["usageDetails"].items() if count}
    assert {"input_cached_tokens", "output_reasoning_tokens"} <= buckets, "compared, too"
    with (desk.folder / "cost.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    written = {row[1]: float(row[2]) for row in rows if row[0] == "user"}
    assert written == pytest.approx({user: usd for user, usd in by_user.items() if usd})
    assert ["model", "shop-topics", ""] in rows, "unknown is an empty cell and not 0"


def test_a_cell_that_a_spreadsheet_would_run_is_written_as_text(tmp_path: Path) -> None:
    cost.write_csv(tmp_path / "a.csv", [("user", "=HYPERLINK(1)", 1), ("user", "@x", "")])
    with (tmp_path / "a.csv").open(newline="") as file:
        assert [row[1] for row in csv.reader(file)] == ["'=HYPERLINK(1)", "'@x"]


def budget(limit: str = "1", clock: Any = lambda: 0.0) -> tuple[Any, list[tuple[str, Decimal]]]:
    alerts: list[tuple[str, Decimal]] = []
    made = cost.Budget(
        Decimal(limit), timedelta(hours=1), lambda *alert: alerts.append(alert), clock
    )
    return made, alerts


def test_a_budget_warns_once_then_refuses_then_lets_time_heal() -> None:
    now = [0.0]
    made, alerts = budget(clock=lambda: now[0])
    for _ in range(9):
        made.settle(made.reserve("ada", Decimal("0.2")), Decimal("0.1"))
    assert alerts == [("ada", Decimal("0.8"))], "at 80 % once, though spending went on"
    with pytest.raises(cost.BudgetExceededError, match=r"has spent \$0\.900000 of \$1"):
        made.reserve("ada", Decimal("0.2"))
    made.reserve("bob", Decimal(1))  # another user has a budget of his own
    now[0] = 3600.0
    made.reserve("ada", Decimal("0.9"))
    assert [user for user, _ in alerts] == ["ada", "bob", "ada"], "a new window, a new warning"


def test_a_refused_call_costs_the_budget_nothing_and_a_failed_one_its_worst_case() -> None:
    made, _ = budget()
    with pytest.raises(cost.BudgetExceededError):
        made.reserve("ada", Decimal("1.01"))
    made.reserve("ada", Decimal("0.6"))  # never settled: the provider may have billed it
    with pytest.raises(cost.BudgetExceededError):
        made.reserve("ada", Decimal("0.6"))
    made.reserve("ada", Decimal("0.4"))


class _Calls:
    """A model that fails its first call, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    async def __call__(self, *_: Any) -> Any:
        self.count += 1
        await asyncio.sleep(0)
        if self.count == 1:
            raise openai.OpenAIError("not now")
        return "Yes.", Decimal("0.1")


def test_the_cache_shares_a_call_and_forgets_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _Calls()
    monkeypatch.setattr(cost, "write_answer", calls)
    monkeypatch.setenv("LANGFUSE_TRACING_ENABLED", "false")
    monkeypatch.setenv("LANGFUSE_PUBLIC_KEY", "pk-lf-off")
    monkeypatch.setenv("LANGFUSE_SECRET_KEY", "sk-lf-off")
    request = traffic.Request("Why?", "gpt-4o-mini", "sales", "chat", None)
    ask = partial(cost.answer_request, None, cost.Ledger(), {}, request)

    async def twice() -> list[list[str]]:
        return [list(await asyncio.gather(ask(), ask(), ask())) for _ in range(2)]

    assert asyncio.run(twice()) == [[cost.SORRY] * 3, ["Yes."] * 3]
    assert calls.count == 2


def test_threads_cannot_overspend_a_budget() -> None:
    made, alerts = budget()
    ready = threading.Barrier(16)

    def spend(_: int) -> bool:
        ready.wait(timeout=10)
        try:
            made.reserve("ada", Decimal("0.1"))
        except cost.BudgetExceededError:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        allowed = sum(pool.map(spend, range(16)))
    assert allowed == 10
    assert len(alerts) == 1


def test_tasks_cannot_overspend_a_budget() -> None:
    made, _ = budget()

    async def spend() -> bool:
        try:
            entry = made.reserve("ada", Decimal("0.5"))
        except cost.BudgetExceededError:
            return False
        await asyncio.sleep(0)  # the call, during which the others ask
        made.settle(entry, Decimal("0.5"))
        return True

    async def all_at_once() -> list[bool]:
        return await asyncio.gather(*(spend() for _ in range(8)))

    assert sum(asyncio.run(all_at_once())) == 2


def test_the_refusal_is_traced_on_the_step_that_refused(desk: Desk) -> None:
    desk.run("04_cost_monitoring.py")
    with desk.serving() as client:
        nodes = stored_observations(client)
    refused = [n for n in nodes if n["name"] == "check-budget" and n["level"] == "ERROR"]
    assert len(refused) == 1
    assert re.search(r"gus has spent .* may cost", refused[0]["statusMessage"])
    of_trace = [n["name"] for n in nodes if n["traceId"] == refused[0]["traceId"]]
    assert "write-answer" not in of_trace


# --- Lesson 5 -----------------------------------------------------------------------------


def test_scores_of_all_types_stand_where_they_belong_and_the_last_rating_counts(desk: Desk) -> None:
    desk.run("05_custom_metrics.py")
    with desk.serving() as client:
        query = {"limit": "100", "fields": "details,subject", "environment": "development"}
        scores = client.get("/api/public/v3/scores", params=query).json()["data"]
    found = {(s["name"], s["dataType"], s["subject"]["kind"]) for s in scores}
    assert found == {
        ("answer-words", "NUMERIC", "observation"),
        ("answer-kind", "CATEGORICAL", "trace"),
        ("user-rating", "NUMERIC", "trace"),
        ("relevance", "NUMERIC", "trace"),
        ("faithfulness", "NUMERIC", "trace"),
        ("toxicity", "NUMERIC", "trace"),
        ("resolved", "BOOLEAN", "session"),
        ("note", "TEXT", "session"),
        ("correct", "NUMERIC", "observation"),
        ("accuracy", "NUMERIC", "experiment"),
    }
    ratings = [s["value"] for s in scores if s["name"] == "user-rating"]
    assert sorted(ratings) == [0, 0.25, 0.25, 0.75, 1, 1]


def test_what_the_judge_could_not_judge_is_a_failure_and_no_score(desk: Desk) -> None:
    desk.run("05_custom_metrics.py")
    with desk.serving() as client:
        judged = [n for n in stored_observations(client) if n["name"] == "judge-answer"]
        scores = client.get("/api/public/v3/scores", params={"name": "relevance"}).json()["data"]
    failed = [n for n in judged if n["level"] == "ERROR"]
    assert (len(judged), len(failed), len(scores)) == (7, 1, 6)
    assert failed[0]["statusMessage"].startswith("no judgement: LengthFinishReasonError")


def test_the_gate_lets_a_better_prompt_pass_and_refuses_a_worse_one(desk: Desk) -> None:
    better = desk.run("05_custom_metrics.py")
    swapped = (
        (
            'try_prompt(langfuse, client, "baseline", BASELINE)',
            'try_prompt(langfuse, client, "baseline", CANDIDATE)',
        ),
        (
            'try_prompt(langfuse, client, "candidate", CANDIDATE)',
            'try_prompt(langfuse, client, "candidate", BASELINE)',
        ),
    )
    worse = run(desk, "05_custom_metrics.py", *swapped)
    assert better.returncode == 0
    assert worse.returncode == 1
    assert re.fullmatch(r"The gate refuses .* `accuracy`: 0\.\d+ .*\n", worse.stderr)


def test_a_prompt_that_fails_on_most_questions_does_not_pass_the_gate(desk: Desk) -> None:
    returns = "        return write_answer(client, instruction, item.input)\n"
    hard = "        if instruction == CANDIDATE and not item.input.startswith('Can I'):\n"
    fails = (returns, f"{hard}            raise LookupError('too hard')\n{returns}")
    ran = run(desk, "05_custom_metrics.py", fails)
    assert ran.returncode == 1
    assert "0.08 after" in ran.stdout
    assert "The gate refuses" in ran.stderr


def test_the_dataset_is_updated_and_each_run_is_an_experiment(desk: Desk) -> None:
    desk.run("05_custom_metrics.py")
    desk.run("05_custom_metrics.py")
    with desk.serving() as client:
        [dataset] = client.get("/api/public/v2/datasets").json()["data"]
        items = client.get("/api/public/dataset-items", params={"limit": 100}).json()["data"]
        query = {"fromStartTime": "2020-01-01T00:00:00Z"}
        experiments = client.get("/api/public/experiments", params=query).json()["data"]
    assert dataset["name"] == "shop-questions"
    assert len(items) == 12
    assert len(experiments) == 4


def test_the_numbers_for_the_business_are_those_of_the_stored_scores(desk: Desk) -> None:
    ran = desk.run("05_custom_metrics.py")
    with desk.serving() as client:
        resolved = client.get("/api/public/v3/scores", params={"name": "resolved"}).json()["data"]
        spent = [n["totalCost"] for n in stored_observations(client) if n["sessionId"]]
    yes = sum(score["value"] for score in resolved)
    assert f"resolution rate      {yes} of {len(resolved)}" in ran.stdout
    assert f"cost per resolved    ${sum(spent) / yes:.6f}" in ran.stdout
