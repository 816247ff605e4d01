"""The guard lets through what fits and nothing else, and says what each answer cost."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import TOP, Desk, Ran, drawn_trees, promised_trees, stored_observations, stored_trees
from hostile_model import going_wrong

from common.pricing import cost_of
from recipes import budget_guard
from recipes.budget_guard import MAX_TOKENS, Budget, RefusedError, worst_case

SCRIPT = "recipes/budget_guard.py"
RECIPE = ("-m", "recipes.budget_guard")
COSTS = re.compile(r"reserved \$([\d.]+), cost \$([\d.]+); taken: \$([\d.]+) of \$([\d.]+)")
REFUSED = re.compile(r"Refused: (\w+) has \$([\d.]+) left; it may cost \$([\d.]+)\.")


def test_a_budget_warns_once_a_day_then_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime(2026, 11, 28, 23, 59, tzinfo=UTC)
    monkeypatch.setattr(budget_guard, "datetime", SimpleNamespace(now=lambda _: now))
    budget, alerts = Budget(Decimal(1)), []
    for _ in range(9):
        reserved = budget.reserve("ada", Decimal("0.2"))
        alerts.append(reserved.alert)
        budget.settle(reserved, Decimal("0.1"))
    warning = "ada has spent or reserved 80% of the limit"
    assert alerts == [*[""] * 6, warning, "", ""], "once, though spending went on"
    with pytest.raises(RefusedError, match=r"ada has \$0\.100000 left; it may cost \$0\.200000"):
        budget.reserve("ada", Decimal("0.2"))
    pending = budget.reserve("ada", Decimal("0.1"))  # exactly what is left
    assert budget.reserve("bob", Decimal(1)).alert, "a user of his own"
    now += timedelta(minutes=1)
    assert budget.reserve("ada", Decimal("0.9")).alert, "a new day, a new warning"
    budget.settle(pending, Decimal(0))  # of yesterday: it gives nothing back today
    with pytest.raises(RefusedError):
        budget.reserve("ada", Decimal("0.2"))


class Slow(Decimal):
    """An amount that lets other threads in while it is compared: wherever there is no lock."""

    def __gt__(self, other: object) -> bool:
        threading.Event().wait(0.001)
        return Decimal(self) > other  # type: ignore[operator]


def test_threads_cannot_overspend_a_budget() -> None:
    budget, ready = Budget(Decimal(1)), threading.Barrier(16)

    def spend(_: int) -> str | None:
        ready.wait(timeout=10)
        try:
            return budget.reserve("ada", Slow("0.1")).alert
        except RefusedError:
            return None

    with ThreadPoolExecutor(16) as pool:
        alerts = [*pool.map(spend, range(16))]
    assert [alerts.count(None), alerts.count("")] == [6, 9], "ten fit, and one of them warns"


def test_the_worst_case_is_a_prompt_written_to_the_cache_and_the_longest_answer() -> None:
    messages = [{"role": "user", "content": "Can I return shoes after 20 days?"}]

    def prompt(model: str, usd_per_token: str) -> Decimal:
        longest = cost_of(model, {"output": MAX_TOKENS}) or Decimal(0)
        return (worst_case(model, messages) - longest) / Decimal(usd_per_token)

    written, read = prompt("gpt-6-luna", "0.000000125"), prompt("gpt-4o", "0.0000025")
    assert written == read * 4 // 3, "its tokens are estimated, so a third is added"
    assert read > 8
    with pytest.raises(RefusedError, match="shop-topics has no price: add it to PRICES"):
        worst_case("shop-topics", messages)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Ran:
    """The recipe, run twice on one database; what the second run printed."""
    desk = Desk(tmp_path_factory.mktemp("guard"), vocabulary)
    for _ in range(2):
        process = desk.run(*RECIPE)
        assert (process.returncode, process.stderr) == (0, "")
    return Ran(desk, process)


def costs_shown(output: str) -> list[tuple[Decimal, ...]]:
    """Return reserved, cost, taken and limit of each answered question, in order."""
    return [tuple(map(Decimal, found)) for found in COSTS.findall(output)]


def test_draws_and_stores_what_it_promises(ran: Ran) -> None:
    promised = promised_trees((TOP / SCRIPT).read_text())
    with ran.desk.serving() as client:
        assert sorted(stored_trees(client)) == sorted(promised * 2)
    assert drawn_trees(ran.process.stdout) == [promised[0]] * 3 + [promised[-1]]


def test_the_costs_shown_are_those_stored_and_explain_each_decision(ran: Ran) -> None:
    one_by_one, at_once = ran.process.stdout.split("All at once")
    with ran.desk.serving() as client:
        calls = [n for n in stored_observations(client) if n["type"] == "GENERATION"]
    shown = costs_shown(one_by_one)
    stored = [call["totalCost"] for call in calls[len(calls) // 2 :]]  # of the second run
    costs = [float(cost) for _, cost, *_ in shown + costs_shown(at_once)]
    assert costs == pytest.approx(stored, abs=5e-7)
    taken, close = Decimal(0), Decimal("0.000003")  # each is rounded to a millionth
    lines, warned = one_by_one.splitlines(), list[str]()
    for reserved, cost, total, limit in shown:
        share = (taken + reserved) / limit
        assert share <= 1
        if share >= Decimal("0.8") and not warned:
            warned = [f"    Alert: gus has spent or reserved {share:.0%} of the limit"]
            [at] = [i for i, line in enumerate(lines) if f"cost ${cost}; taken: ${total}" in line]
            assert lines[at + 1] == warned[0], "right below the question that caused it"
        taken += cost
        assert abs(taken - total) < close
    assert [line for line in lines if "Alert: " in line] == warned != []
    [(user, left, most)] = REFUSED.findall(one_by_one)
    assert (user, abs(limit - taken - Decimal(left)) < close) == ("gus", True)
    assert Decimal(most) > Decimal(left)
    assert [user for user, *_ in REFUSED.findall(at_once)] == ["hal"] * 3


def test_the_refusal_is_traced_on_the_step_that_refused(ran: Ran) -> None:
    with ran.desk.serving() as client:
        nodes = stored_observations(client)
    checks = [n for n in nodes if n["name"] == "check-budget"]
    assert {n["type"] for n in checks} == {"GUARDRAIL"}
    refused = [n for n in checks if n["level"] == "ERROR"]
    assert [n["userId"] for n in refused] == ["gus", "hal", "hal", "hal"] * 2
    for node in refused:
        [root] = [n for n in nodes if n["id"] == node["parentObservationId"]]
        assert root["output"] == f"Refused: {node['statusMessage']}.", "what the user was told"
    assert [n["userId"] for n in checks if n["level"] == "WARNING"] == ["gus"] * 2


def test_without_tracing_it_guards_all_the_same(desk: Desk) -> None:
    refused = desk.folder / "refused"
    off = {"LANGFUSE_TRACING_ENABLED": "false", "PYTHONPATH": str(TOP / "tests/refuse_sockets")}
    ran = desk.run(*RECIPE, **off, REFUSE_SOCKETS="all", REFUSED_SOCKETS_FILE=str(refused))
    assert (ran.returncode, ran.stderr) == (0, "")
    assert len(costs_shown(ran.stdout)) == len(REFUSED.findall(ran.stdout)) == 4
    assert "Tracing is off and nothing is stored" in ran.stdout
    assert not refused.exists()


def test_a_model_that_fails_is_one_line_and_a_status(desk: Desk) -> None:
    with going_wrong("busy") as url:
        ran = desk.run(*RECIPE, OPENAI_BASE_URL=url)
    assert (ran.returncode, ran.stderr.count("\n")) == (1, 1)
    assert "overloaded" in ran.stderr


def test_the_edit_to_try_refuses_where_the_costs_predict_it(ran: Ran, desk: Desk) -> None:
    (tried, limit), (given, _) = re.findall(
        r'USER_LIMIT (?:to|=) (Decimal\("([\d.]+)"\))', (TOP / SCRIPT).read_text()
    )
    seen = costs_shown(ran.process.stdout)
    fits = [total - cost + reserved <= Decimal(limit) for reserved, cost, total, _ in seen]
    (desk.folder / "recipes").mkdir()
    edited = desk.run_edited(SCRIPT, (f"= {given}", f"= {tried}"))
    assert len(costs_shown(edited.stdout.split("Refused")[0])) == fits.index(False) == 2
