"""The report is what is stored, and it says where a ledger of one's own disagrees."""

import csv
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import TOP, Desk, Ran, promised_trees, stored_observations, stored_trees

from common.pricing import PRICES, price_of
from recipes.cost_report import (
    Ledger,
    Line,
    calls_without_cost,
    label_of,
    reconcile,
    write_csv,
)

RECIPE = ("-m", "recipes.cost_report")
REFUSING = str(Path(__file__).parent / "refuse_sockets")
HEADER = "kind,name,calls,USD,calls without a price\n"


def cells(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Ran:
    """The recipe as a newcomer runs it, but for the file."""
    desk = Desk(tmp_path_factory.mktemp("cost"), vocabulary)
    return Ran(desk, desk.run(*RECIPE, "--csv", str(desk.folder / "cost.csv")))


@pytest.fixture(scope="module")
def stored(ran: Ran) -> list[dict[str, Any]]:
    with ran.desk.serving() as client:
        return [n for n in stored_observations(client) if n["type"] == "GENERATION"]


def test_it_agrees_and_leaves_the_trees_that_it_promises(ran: Ran) -> None:
    assert (ran.process.returncode, ran.process.stderr) == (0, "")
    with ran.desk.serving() as client:
        trees = stored_trees(client)
    assert sorted(trees) == sorted(promised_trees((TOP / "recipes/cost_report.py").read_text()))


def test_every_row_is_what_the_stored_calls_add_up_to(
    ran: Ran, stored: list[dict[str, Any]]
) -> None:
    calls: defaultdict[tuple[str, str], list[Any]] = defaultdict(list)
    for call in stored:
        calls["model", call["model"]].append(call)
        calls["user", call["userId"] or "(no user)"].append(call)
        calls["team", (call["tags"] or ["team:(no team)"])[0].removeprefix("team:")].append(call)
        calls["day", call["startTime"][:10]].append(call)
    [header, *rows] = cells(ran.desk.folder / "cost.csv")
    assert ",".join(header) + "\n" == HEADER
    assert {(kind, name) for kind, name, *_ in rows} == {*calls}
    for kind, name, count, usd, unpriced in rows:
        own = calls[kind, name]
        costs = [c["costDetails"]["total"] for c in own if c["costDetails"]]
        nothing = [c for c in own if not c["costDetails"] and c["level"] != "ERROR"]
        assert (int(count), int(unpriced)) == (len(own), len(nothing)), name
        assert (usd == "") == (len(nothing) == len(own)), f"{name}: unknown is not 0"
        assert float(usd or 0) == pytest.approx(sum(costs), abs=1e-9), name
        shown = f"${usd}" if usd else "no price"
        said = rf"^  {re.escape(name)} +{count} +{re.escape(shown)}( +{unpriced})? *$"
        assert re.search(said, ran.process.stdout, re.MULTILINE), name
    assert {("team", "(no team)"), ("user", "(no user)")} <= {*calls}, "a job without an owner"
    assert ["model", "shop-topics", "1", "", "1"] in rows
    assert ["model", "gpt-6-lunna", "1", "0.000000000", "0"] in rows, "refused: it cost nothing"
    assert "unknown" not in ran.process.stdout


def test_it_says_what_a_reconciliation_proves_and_what_it_leaves_out(
    ran: Ran, stored: list[dict[str, Any]]
) -> None:
    total = sum(call["costDetails"].get("total", 0) for call in stored)
    for words in (
        "The ledger has the prices of common/pricing.py, Langfuse those of its own list.\n",
        f"  they agree on        ${total:.9f} for {len(stored) - 1} calls\n",
        "  not compared         shop-topics: the ledger has no price for 1 call, Langfuse has no ",
        "no call was lost or counted twice, and the prices compared are the same.\n",
    ):
        assert words in ran.process.stdout


def test_a_price_that_langfuse_has_otherwise_is_found_and_ends_with_exit_1(desk: Desk) -> None:
    """The ledger and Langfuse price by tables of their own, so one can find the other wrong."""
    listed = price_of("gpt-6-sol")
    assert listed is not None
    usd = {bucket: float(each) for bucket, each in listed.per_token().items()}
    usd["output"] *= 1.01  # of all its buckets this one alone
    tier = {"name": "Standard", "isDefault": True, "priority": 0, "conditions": [], "prices": usd}
    file = desk.folder / "cost.csv"
    with desk.serving() as client:
        own = {"modelName": "gpt-6-sol", "matchPattern": "^gpt-6-sol$", "unit": "TOKENS"}
        body = {**own, "pricingTiers": [tier]}
        client.post("/api/public/models", json=body).raise_for_status()
        ran = desk.run(*RECIPE, "--csv", str(file))
        calls = [n for n in stored_observations(client) if n["model"] == "gpt-6-sol"]
    theirs = sum(call["costDetails"]["total"] for call in calls)
    found = re.fullmatch(
        r"The accounts differ\. gpt-6-sol: the ledger has \$(0\.\d{9}) for 4 calls, "
        rf"Langfuse has \$(0\.\d{{9}}) for 4 calls\. {re.escape(str(file))} was not written\.\n",
        ran.stderr,
    )
    assert ran.returncode == 1
    assert found, ran.stderr
    assert float(found[2]) == pytest.approx(theirs, abs=1e-9)
    assert float(found[1]) < float(found[2])
    assert "no call was lost" not in ran.stdout
    assert not file.exists()


def test_a_model_that_one_list_lacks_is_left_out_by_name(ran: Ran, tmp_path: Path) -> None:
    """A second run on the same database, too: the first one's calls are in none of its sums."""
    model = "gpt-5.1"
    assert model not in {price.model for price in PRICES}, "take another one"
    again = ran.desk.copied_to(tmp_path).run(*RECIPE, OPENAI_MODEL=model)
    assert (again.returncode, again.stderr) == (0, "")
    said = r"the ledger has no price for 7 calls, Langfuse has \$0\.\d+ for 7 calls\n"
    assert re.search(rf"not compared +{model}[-\d]*: {said}", again.stdout), again.stdout
    assert re.search(r"they agree on +\$0\.\d+ for 5 calls", again.stdout)


# What a process adds to the recipe: a call that Langfuse never sees, one the ledger forgets.
LOST = """
import functools
from recipes import cost_report as r
r.poll = functools.partial(r.poll, seconds=1)
r.classify_question = lambda ledger, request: ledger.add(request.model, {"input": 1})
r.main()
"""
LATE = """
from recipes import cost_report as r
asked, calls = r.ask_metrics, []
def late(*args):
    calls.append(args)
    return asked(*args) if len(calls) > 2 else [{"count_count": "12"}]
r.ask_metrics = late
r.main()
"""
FORGOTTEN = """
from recipes import cost_report as r
r.Ledger.add = lambda self, model, usage, add=r.Ledger.add: (
    add(self, model, usage) if self.calls else self.calls.update([model])
)
make = r.classify_question
r.classify_question = lambda ledger, request: make(r.Ledger(), request)
r.main()
"""


def run_code(desk: Desk, code: str) -> subprocess.CompletedProcess[str]:
    return desk.run("-c", code.strip())


def test_it_waits_for_a_server_that_is_late(desk: Desk, ran: Ran) -> None:
    late = run_code(desk, LATE)
    assert (late.returncode, late.stderr) == (0, "")
    [said, first] = (each[each.index("\n1. ") :] for each in (late.stdout, ran.process.stdout))
    assert said == first[: first.index("  written ")]


def test_unknown_costs_are_found_on_every_page_and_a_failed_call_has_none() -> None:
    now = datetime(2026, 11, 28, 23, 30, tzinfo=timezone(-timedelta(hours=1)))  # the 29th in UTC
    used = {"model": "m", "tags": [], "user_id": "", "start_time": now, "usage_details": {"a": 1}}
    failed = {**used, "level": "ERROR", "usage_details": {}}
    rows = [SimpleNamespace(level="DEFAULT", **used), SimpleNamespace(**failed)]
    pages = {
        cursor: SimpleNamespace(data=rows, meta=SimpleNamespace(cursor=after))
        for cursor, after in ((None, "b"), ("b", None))
    }
    observations = SimpleNamespace(get_many=lambda cursor, **_: pages[cursor])
    langfuse: Any = SimpleNamespace(api=SimpleNamespace(observations=observations))
    found = calls_without_cost(langfuse, "run")
    assert len(found) == 2
    labels = [label_of(kind, found[0]) for kind in ("model", "team", "user", "day")]
    assert labels == ["m", "(no team)", "(no user)", "2026-11-29"]


def test_a_call_that_was_lost_ends_the_report(desk: Desk) -> None:
    ran = run_code(desk, LOST)
    assert (ran.returncode, ran.stderr) == (1, "Only 12 of 13 calls can be read back.\n")
    assert "agree" not in ran.stdout


def test_a_call_that_the_ledger_does_not_have_is_named(desk: Desk) -> None:
    ran = run_code(desk, FORGOTTEN)
    assert ran.returncode == 1
    said = r"([\w.-]+): the ledger has .+? for (\d) calls, Langfuse has .+? for (\d) call"
    found = re.findall(said, ran.stderr)
    own = ("shop-topics", "0", "1")  # also where nobody knows a price
    assert found == [("gpt-6-luna", "7", "7"), own], ran.stderr


def line(usd: str | None, calls: int = 1, model: str = "m") -> Line:
    return Line("model", model, calls, None if usd is None else Decimal(usd))


def ledger(usd: str | None, calls: int = 1) -> Ledger:
    made = Ledger()
    made.calls["m"] = calls
    if usd is None:
        made.unpriced["m"] = calls
    else:
        made.usd["m"] = Decimal(usd)
    return made


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        (ledger("0.001"), [line("0.0010000009")], "agree"),
        (ledger("0.001"), [line("0.00100001")], "differ"),
        (ledger("0.001"), [], "differ"),
        (ledger("0.001"), [line("0.001", calls=2)], "differ"),
        (ledger("0.001"), [line("0.001"), line("0", model="n")], "differ"),
        (ledger("0.001"), [line(None)], "left out"),
        (ledger(None), [line("0.001")], "left out"),
        (ledger(None), [line(None)], "left out"),
        (ledger(None), [line(None, calls=2)], "differ"),
        (ledger("0"), [line("0")], "agree"),  # refused by both
    ],
)
def test_a_billionth_of_a_dollar_and_every_call_is_the_limit_of_agreement(
    ours: Ledger, theirs: list[Line], verdict: str
) -> None:
    result = reconcile(ours, theirs)
    assert bool(result.differences) == (verdict == "differ")
    assert bool(result.left_out) == (verdict == "left out")
    assert (result.calls == 1) == (verdict == "agree") or len(theirs) == 2


def test_a_price_that_only_some_calls_have_is_no_missing_price() -> None:
    """One of two calls came without usage: that must not hide the model from the comparison."""
    half = ledger("0.001", calls=2)
    half.unpriced["m"] = 1
    assert reconcile(half, [line("0.002", calls=2)]).differences
    assert reconcile(half, [line(None, calls=2)]).left_out


def test_a_cell_that_a_spreadsheet_would_run_is_written_as_text(tmp_path: Path) -> None:
    names = ["=HYPERLINK(1)", "+1", "-1", "@x", "\tx", "\rx", "＝1", "a=b", "(no user)"]  # noqa: RUF001
    write_csv(tmp_path / "a.csv", [Line("user", name) for name in names])
    written = [row[1] for row in cells(tmp_path / "a.csv")[1:]]
    assert written == [*(f"'{name}" for name in names[:7]), "a=b", "(no user)"]


def test_a_report_of_ours_is_replaced_in_one_step(tmp_path: Path) -> None:
    file, link = tmp_path / "a.csv", tmp_path / "link.csv"
    link.symlink_to(file)
    write_csv(file, [Line("user", "ada", 1, Decimal("0.5"))])

    def breaks() -> Iterator[Line]:
        yield Line("user", "bob", 1)
        raise LookupError

    with pytest.raises(LookupError):
        write_csv(file, breaks())
    assert cells(file)[1:] == [["user", "ada", "1", "0.500000000", "0"]]
    write_csv(link, [Line("user", "bob", 1)])
    assert cells(file)[1:] == [["user", "bob", "1", "", "0"]]
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv", "link.csv"}, "no drafts"
    assert link.is_symlink()


@pytest.mark.parametrize("kind", ["a diary", "empty", "folder", "dangling link", "nowhere"])
def test_what_is_not_ours_is_refused_before_a_call_is_paid_for(kind: str, desk: Desk) -> None:
    path = desk.folder / "costs.csv"
    match kind:
        case "a diary":
            path.write_text("kind,name\nday,it rained\n")
        case "empty":
            path.touch()
        case "folder":
            path.mkdir()
        case "dangling link":
            path.symlink_to(desk.folder / "elsewhere.csv")
        case "nowhere":
            path = desk.folder / "reports" / "costs.csv"
    before = path.read_bytes() if path.is_file() else None
    ran = desk.run(*RECIPE, "--csv", str(path))
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.count("\n") == 1
    assert str(path if kind != "nowhere" else path.parent) in ran.stderr
    assert (path.read_bytes() if path.is_file() else None) == before
    assert not desk.db.exists()


def test_without_tracing_the_ledger_is_all_there_is(desk: Desk) -> None:
    refused = desk.folder / "refused"
    off = {"LANGFUSE_TRACING_ENABLED": "false", "PYTHONPATH": REFUSING, "REFUSE_SOCKETS": "all"}
    off["REFUSED_SOCKETS_FILE"] = str(refused)
    ran = desk.run(*RECIPE, **off)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert re.search(r"gpt-6-sol +4 +\$0\.00\d+", ran.stdout)
    assert "No report: tracing is off" in ran.stdout
    assert "agree" not in ran.stdout
    with_file = desk.run(*RECIPE, "--csv", str(desk.folder / "a.csv"), **off)
    assert with_file.returncode == 2
    assert with_file.stderr.startswith("There would be no report to write: tracing is off")
    assert not (desk.folder / "a.csv").exists()
    assert not refused.exists()


def test_a_sample_is_no_account(desk: Desk) -> None:
    ran = desk.run(*RECIPE, LANGFUSE_SAMPLE_RATE="0.5")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "LANGFUSE_SAMPLE_RATE leaves calls out." in ran.stdout
