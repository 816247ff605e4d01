"""The guard lets through what fits and nothing else, and says what each answer cost."""

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import Desk, Ran, drawn_trees, promised_trees, stored_observations, stored_trees

from common.pricing import cost_of
from recipes.budget_guard import Budget, BudgetExceededError, worst_case

REFUSING = str(Path(__file__).parent / "refuse_sockets")
SCRIPT = "recipes/budget_guard.py"
RECIPE = ("-m", "recipes.budget_guard")
COSTS = re.compile(r"reserved \$([\d.]+), cost \$([\d.]+); taken: \$([\d.]+) of \$([\d.]+)$")
REFUSED = re.compile(r"Refused: .* of .*, and this answer may cost \$([\d.]+)\.$", re.MULTILINE)


def budget(limit: str = "1", clock: Callable[[], float] = lambda: 0.0) -> Budget:
    return Budget(Decimal(limit), timedelta(hours=1), clock)


# %% The budget alone


def test_a_budget_warns_once_then_refuses_then_lets_time_heal() -> None:
    now = [0.0]
    made, alerts = budget(clock=lambda: now[0]), []
    for _ in range(9):
        reserved = made.reserve("ada", Decimal("0.2"))
        alerts.append(reserved.alert)
        made.settle(reserved, Decimal("0.1"))
    first = [None] * 6 + [Decimal("0.8")]
    assert alerts == [*first, None, None], "at 80 % once, though spending went on"
    with pytest.raises(BudgetExceededError, match=r"reserved \$0\.900000 of \$1"):
        made.reserve("ada", Decimal("0.2"))
    assert made.reserve("bob", Decimal(1)).alert == 1  # another user has a budget of his own
    now[0] = 3599.9
    with pytest.raises(BudgetExceededError):
        made.reserve("ada", Decimal("0.2"))
    now[0] = 3600.0
    assert made.taken("ada") == 0
    assert made.reserve("ada", Decimal("0.9")).alert, "a new window, a new warning"


def test_a_refused_call_costs_the_budget_nothing_and_a_failed_one_its_worst_case() -> None:
    made = budget()
    with pytest.raises(BudgetExceededError):
        made.reserve("ada", Decimal("1.01"))
    made.reserve("ada", Decimal("0.6"))  # never settled: the provider may have billed it
    with pytest.raises(BudgetExceededError):
        made.reserve("ada", Decimal("0.6"))
    made.reserve("ada", Decimal("0.4"))


def test_the_window_rolls_with_each_call_and_does_not_start_anew() -> None:
    now = [0.0]
    made = budget(clock=lambda: now[0])
    for now[0] in (0.0, 1800.0):
        made.reserve("ada", Decimal("0.5"))
    now[0] = 3600.0  # the first has left the window, the second has not
    made.reserve("ada", Decimal("0.5"))
    with pytest.raises(BudgetExceededError):
        made.reserve("ada", Decimal("0.1"))


def test_threads_cannot_overspend_a_budget() -> None:
    # A clock that takes a moment lets other threads in wherever there is no lock.
    made = budget(clock=lambda: float(threading.Event().wait(0.001)))
    ready = threading.Barrier(16)
    alerts = []

    def spend(_: int) -> bool:
        ready.wait(timeout=10)
        try:
            alerts.append(made.reserve("ada", Decimal("0.1")).alert)
        except BudgetExceededError:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        allowed = sum(pool.map(spend, range(16)))
    assert allowed == 10
    assert len([alert for alert in alerts if alert]) == 1


def test_tasks_cannot_overspend_a_budget() -> None:
    made = budget()

    async def spend() -> bool:
        try:
            reserved = made.reserve("ada", Decimal("0.5"))
        except BudgetExceededError:
            return False
        await asyncio.sleep(0)  # the call, during which the others ask
        made.settle(reserved, Decimal("0.5"))
        return True

    async def all_at_once() -> list[bool]:
        return await asyncio.gather(*(spend() for _ in range(8)))

    assert sum(asyncio.run(all_at_once())) == 2


def test_the_worst_case_is_a_prompt_written_to_the_cache_and_the_longest_answer() -> None:
    messages = [{"role": "user", "content": "Can I return shoes after 20 days?"}]
    longest = worst_case("gpt-6-luna", messages, 500) - worst_case("gpt-6-luna", messages, 0)
    assert longest == cost_of("gpt-6-luna", {"output": 500})
    estimated = worst_case("gpt-6-luna", messages, 0) / Decimal("0.000000125")  # to write a token
    counted = worst_case("gpt-4o-mini", messages, 0) / Decimal("0.00000015")  # to read: no other
    assert estimated == counted * 4 // 3, "with a third on top"
    assert counted > 8
    with pytest.raises(ValueError, match="shop-topics has no price"):
        worst_case("shop-topics", messages, 500)


# %% As a reader runs it


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Ran:
    """The recipe, run twice on one database; what the second run printed."""
    desk = Desk(tmp_path_factory.mktemp("guard"), vocabulary)
    first = desk.run(*RECIPE)
    assert (first.returncode, first.stderr) == (0, "")
    with desk.serving() as client:
        before = len(stored_observations(client))
    second = desk.run(*RECIPE)
    assert (second.returncode, second.stderr) == (0, "")
    with desk.serving() as client:
        assert len(stored_observations(client)) == 2 * before
    return Ran(desk, second)


def costs_shown(output: str) -> list[tuple[Decimal, ...]]:
    """Return reserved, cost, taken and limit of each answered question, in order."""
    found = (COSTS.search(line) for line in output.splitlines())
    return [tuple(map(Decimal, each.groups())) for each in found if each]


def test_draws_and_stores_what_it_promises(ran: Ran) -> None:
    promised = promised_trees(Path(SCRIPT).read_text())
    with ran.desk.serving() as client:
        stored = stored_trees(client)
    drawn = drawn_trees(ran.process.stdout)
    assert {*stored} == {*drawn} == {*promised}


def test_the_costs_shown_are_those_stored_and_explain_each_decision(ran: Ran) -> None:
    output = ran.process.stdout
    with ran.desk.serving() as client:
        nodes = stored_observations(client)
    stored = [n["totalCost"] for n in nodes if n["type"] == "GENERATION"]
    latest = stored[len(stored) // 2 :]  # of the second run
    assert [float(cost) for _, cost, *_ in costs_shown(output)] == pytest.approx(latest, abs=5e-7)

    before, _, after = output.partition("a day later")
    taken = Decimal(0)
    for reserved, cost, sum_shown, limit in costs_shown(before):
        assert taken + reserved <= limit
        taken += cost
        assert abs(taken - sum_shown) < Decimal("0.000003"), "each is rounded to a millionth"
    refused = REFUSED.search(before)
    assert refused
    assert taken + Decimal(refused[1]) > limit
    _, cost, sum_shown, _ = costs_shown(after)[0]
    assert cost == sum_shown, "a day later nothing else counts"


def test_the_alert_stands_below_the_question_that_caused_it(ran: Ran) -> None:
    lines = ran.process.stdout.splitlines()
    [at] = [number for number, line in enumerate(lines) if "Alert:" in line]
    own, earlier = COSTS.search(lines[at - 1]), costs_shown("\n".join(lines[: at - 1]))
    assert own
    reserved, _, _, limit = map(Decimal, own.groups())
    taken = earlier[-1][2]
    assert (taken + reserved) / limit >= Decimal("0.8") > (earlier[-1][0]) / limit
    assert f"{(taken + reserved) / limit:.0%}" in lines[at]


def test_at_once_only_as_many_are_asked_as_fit_together(ran: Ran) -> None:
    at_once = ran.process.stdout.split("Four questions at once")[1]
    assert len(costs_shown(at_once)) == 1
    assert at_once.count("Refused: hal has spent or reserved") == 3


def test_the_refusal_is_traced_on_the_step_that_refused(ran: Ran) -> None:
    with ran.desk.serving() as client:
        nodes = stored_observations(client)
    checks = [n for n in nodes if n["name"] == "check-budget"]
    assert {n["type"] for n in checks} == {"GUARDRAIL"}
    refused = [n for n in checks if n["level"] == "ERROR"]
    assert [n["userId"] for n in refused] == ["gus", "hal", "hal", "hal"] * 2
    for node in refused:
        assert re.search(r"has spent .* may cost", node["statusMessage"])
        trace = [n for n in nodes if n["traceId"] == node["traceId"]]
        assert {n["name"] for n in trace} == {"answer-within-budget", "check-budget"}
        assert trace[0]["output"].startswith("Refused: "), "what the user was told"
    warned = [n for n in checks if n["level"] == "WARNING"]
    assert [n["userId"] for n in warned] == ["gus"] * 2


def test_the_edit_to_try_refuses_where_the_costs_predict_it(ran: Ran, tmp_path: Path) -> None:
    source = Path(SCRIPT).read_text()
    limits = re.findall(r'USER_LIMIT (?:to|=) (Decimal\("([\d.]+)"\))', source)
    (tried, limit), (given, _) = limits
    (tmp_path / "budget_guard.py").write_text(source.replace(f"= {given}", f"= {tried}"))
    edited = Desk(tmp_path, ran.desk.vocabulary).run(
        str(tmp_path / "budget_guard.py"), PYTHONPATH=str(Path.cwd())
    )
    assert (edited.returncode, edited.stderr) == (0, "")
    seen = costs_shown(
        ran.process.stdout.partition("Four questions")[0]
    )  # of the first day, and on
    taken, answered = Decimal(0), 0
    smallest = min(reserved for reserved, *_ in seen)
    for reserved, cost, *_ in seen:
        assert taken + reserved <= Decimal(limit)
        taken, answered = taken + cost, answered + 1
    assert taken + smallest > Decimal(limit), "so the next one is refused"
    assert len(costs_shown(edited.stdout.partition("a day later")[0])) == answered


def test_without_tracing_it_guards_all_the_same(desk: Desk) -> None:
    refused = desk.folder / "refused"
    off = {"LANGFUSE_TRACING_ENABLED": "false", "PYTHONPATH": REFUSING}
    ran = desk.run(*RECIPE, **off, REFUSE_SOCKETS="all", REFUSED_SOCKETS_FILE=str(refused))
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.count("Refused: ") == 4
    assert "No trace: tracing is off" in ran.stdout
    assert not refused.exists()


def test_a_model_without_a_price_is_refused_in_one_line(desk: Desk) -> None:
    ran = desk.run(*RECIPE, OPENAI_MODEL="shop-topics")
    assert ran.returncode == 1
    assert ran.stderr == "shop-topics has no price: add it to PRICES in common/pricing.py.\n"


@contextmanager
def broken_model() -> Iterator[str]:
    """Serve a model that answers nothing but that the key is wrong."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            body = b'{"error": {"message": "Incorrect API key."}}'
            self.send_response(401)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def test_a_model_that_fails_is_one_line_and_a_status(desk: Desk) -> None:
    with broken_model() as url:
        ran = desk.run(*RECIPE, OPENAI_BASE_URL=url, OPENAI_API_KEY="sk-1234567890abcdef")
    assert ran.returncode == 1
    assert "Incorrect API key" in ran.stderr
    assert ran.stderr.count("\n") == 1
