"""What lesson 4 promises beyond running: read back from where it stored it, and its parts alone."""

import asyncio
import csv
import importlib
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest
from conftest import Desk, Ran, stored_observations

from common.pricing import price_of

cost = importlib.import_module("04_cost_monitoring")
LESSON = "04_cost_monitoring.py"


@pytest.fixture
def lesson() -> str:
    return LESSON


def test_a_price_that_langfuse_has_otherwise_is_found_and_ends_with_exit_1(desk: Desk) -> None:
    """The ledger and Langfuse price by tables of their own, so one can find the other wrong."""
    listed = price_of("gpt-6-sol")
    assert listed is not None
    usd = {bucket: float(each) for bucket, each in listed.per_token().items()}
    usd["output"] *= 1.01  # of all its buckets this one alone
    tier = {"name": "Standard", "isDefault": True, "priority": 0, "conditions": [], "prices": usd}
    with desk.serving() as client:
        own = {"modelName": "gpt-6-sol", "matchPattern": "^gpt-6-sol$", "unit": "TOKENS"}
        body = {**own, "pricingTiers": [tier]}
        client.post("/api/public/models", json=body).raise_for_status()
        ran = desk.run(LESSON)
    assert ran.returncode == 1
    assert "do not agree" in ran.stderr
    red = re.findall(
        r"^  (\S+): the ledger has \$0\.\d+, Langfuse \$0\.\d+$", ran.stdout, re.MULTILINE
    )
    assert red == ["gpt-6-sol", "total"]


def test_a_billionth_of_a_dollar_is_the_limit_of_agreement() -> None:
    ledger = cost.Ledger()
    ledger.usd["gpt-4o"] = Decimal("0.001")
    near, far = Decimal("0.0010000009"), Decimal("0.00100001")
    assert cost.differences(ledger, {"gpt-4o": near}) == []
    for stored in ({"gpt-4o": far}, {}):
        assert {row[0] for row in cost.differences(ledger, stored)} == {"gpt-4o", "total"}


def test_the_report_is_what_the_stored_calls_add_up_to(first_run: Ran) -> None:
    with first_run.desk.serving() as client:
        nodes = [n for n in stored_observations(client) if "run" in n["metadata"]]
    calls = [n for n in nodes if n["type"] == "GENERATION"]
    by_user: dict[str, float] = {}
    for call in calls:
        user = call["userId"] or "unknown"
        by_user[user] = by_user.get(user, 0) + call["totalCost"]
    for user, usd in by_user.items():
        if user == "unknown":
            continue  # the teams have such a row, too
        shown = re.search(rf"^  {user} +\$([\d.]+) ", first_run.process.stdout, flags=re.MULTILINE)
        assert shown or not usd, user
        assert not shown or float(shown[1]) == pytest.approx(usd, abs=1e-6)
    cached = [n for n in nodes if n["name"] == "answer-from-cache"]
    assert f"{len(cached)} of 300" in first_run.process.stdout
    requests = {n["traceId"] for n in nodes if n["name"] == "answer-request"}
    asked = sum(call["traceId"] in requests for call in calls)
    assert asked + len(cached) == 300
    assert f"  asked a model        {asked}; " in first_run.process.stdout
    unknown = [n for n in calls if not n["costDetails"]]
    assert {n["model"] for n in unknown} == {"shop-topics"}
    assert f"{len(unknown)} calls of shop-topics" in first_run.process.stdout
    failed = [n for n in calls if n["level"] == "ERROR"]
    assert f"{len(failed)} of {len(calls)} calls" in first_run.process.stdout
    buckets = {bucket for n in calls for bucket, count in n["usageDetails"].items() if count}
    assert {"input_cached_tokens", "output_reasoning_tokens"} <= buckets, "compared, too"
    with (first_run.desk.folder / "cost.csv").open(newline="") as file:
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
    request = cost.Request("Why?", "gpt-6-luna", "sales", "chat", None)
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


def test_the_refusal_is_traced_on_the_step_that_refused(first_run: Ran) -> None:
    with first_run.desk.serving() as client:
        nodes = stored_observations(client)
    refused = [n for n in nodes if n["name"] == "check-budget" and n["level"] == "ERROR"]
    assert len(refused) == 1
    assert re.search(r"gus has spent .* may cost", refused[0]["statusMessage"])
    of_trace = [n["name"] for n in nodes if n["traceId"] == refused[0]["traceId"]]
    assert "write-answer" not in of_trace
