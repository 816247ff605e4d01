"""The report is what is stored, and it says where a ledger of one's own disagrees."""

import csv
import re
from collections import defaultdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from conftest import TOP, Desk, Ran, promised_trees, stored_observations, stored_trees

from common.pricing import PRICES
from recipes.cost_report import Sums, may_write, reconcile, write_csv

RECIPE = ("-m", "recipes.cost_report")
REFUSING = str(Path(__file__).parent / "refuse_sockets")


def cells(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Ran:
    """The recipe as a newcomer runs it, but for the file."""
    desk = Desk(tmp_path_factory.mktemp("cost"), vocabulary)
    return Ran(desk, desk.run(*RECIPE, "--csv", str(desk.folder / "cost.csv")))


def test_it_agrees_and_leaves_the_trees_that_it_promises(ran: Ran) -> None:
    assert (ran.process.returncode, ran.process.stderr) == (0, "")
    promised = promised_trees((TOP / "recipes/cost_report.py").read_text())
    with ran.desk.serving() as client:
        assert sorted(stored_trees(client)) == sorted(promised)
    for words in (
        "not compared    shop-topics has 2 calls for USD unknown in the ledger, 2 for unknown",
        "no call was lost or counted twice, and the prices compared are the same.\n",
        "  in no sum            2 calls of shop-topics, which have no cost\n",
    ):
        assert words in ran.process.stdout


def test_every_row_is_what_the_stored_calls_add_up_to(ran: Ran) -> None:
    with ran.desk.serving() as client:
        stored = stored_observations(client)
    calls: defaultdict[tuple[str, str], list[Any]] = defaultdict(list)
    for call in stored:
        calls["model", call["model"]].append(call)
        calls["user", call["userId"] or "(no user)"].append(call)
        calls["team", (call["tags"] or ["(no team)"])[0]].append(call)
        calls["day", call["startTime"][:10]].append(call)
    [header, *rows] = cells(ran.desk.folder / "cost.csv")
    assert header == ["by", "name", "calls", "USD"]
    assert {(by, name) for by, name, *_ in rows} == {*calls}
    assert {("team", "(no team)"), ("user", "(no user)")} <= {*calls}, "a job without an owner"
    for by, name, count, usd in rows:
        own = calls[by, name]
        costs = [c["costDetails"]["total"] for c in own if c["costDetails"]]
        assert int(count) == len(own), name
        assert (usd == "unknown") == (not costs), f"{name}: unknown is not 0"
        assert not costs or float(usd) == pytest.approx(sum(costs), abs=1e-9), name
        said = rf"^  {by} +{re.escape(name)} +{count} +{usd} *$"
        assert re.search(said, ran.process.stdout, re.MULTILINE), name
    assert ["model", "shop-topics", "2", "unknown"] in rows


def test_a_price_that_langfuse_has_otherwise_is_found_and_ends_with_exit_1(desk: Desk) -> None:
    """The ledger and Langfuse price by tables of their own, so one can find the other wrong."""
    price = next(each for each in PRICES if each.model == "gpt-6-sol")
    usd = {bucket: float(each) for bucket, each in price.per_token().items()}
    usd["output"] *= 1.01  # of all its buckets this one alone
    tier = {"name": "Standard", "isDefault": True, "priority": 0, "conditions": [], "prices": usd}
    file = desk.folder / "cost.csv"
    with desk.serving() as client:
        body: dict[str, Any] = {"modelName": "gpt-6-sol", "matchPattern": "^gpt-6-sol$"}
        body |= {"unit": "TOKENS", "pricingTiers": [tier]}
        client.post("/api/public/models", json=body).raise_for_status()
        ran = desk.run(*RECIPE, "--csv", str(file))
        calls = [n for n in stored_observations(client) if n["model"] == "gpt-6-sol"]
    theirs = sum(call["costDetails"]["total"] for call in calls)
    found = re.fullmatch(
        r"The accounts differ: gpt-6-sol has 4 calls for USD (0\.\d{9}) in the ledger, "
        r"4 for (0\.\d{9}) in Langfuse\.\n",
        ran.stderr,
    )
    assert found, ran.stderr
    assert (ran.returncode, file.exists()) == (1, False)
    assert float(found[2]) == pytest.approx(theirs, abs=1e-9)
    assert float(found[1]) < float(found[2])
    assert "no call was lost" not in ran.stdout


def test_a_model_that_one_list_lacks_is_left_out_by_name(ran: Ran, tmp_path: Path) -> None:
    """A second run on the same database, too: the first one's calls are in none of its sums."""
    model = "gpt-5.1"
    assert model not in {price.model for price in PRICES}, "take another one"
    again = ran.desk.copied_to(tmp_path).run(*RECIPE, OPENAI_MODEL=model)
    assert (again.returncode, again.stderr) == (0, "")
    said = rf"not compared +{model}[-\d]* has 4 calls for USD unknown in the ledger, 4 for 0\.\d+ "
    assert re.search(said, again.stdout), again.stdout


LATE = """
import functools
from recipes import cost_report as r
asked, calls = r.sums_by, []
def late(*args):
    calls.append(args)
    return asked(*args) if len(calls) > 2 else {}
r.sums_by, r.poll = late, functools.partial(r.poll, seconds=2)
r.main()
"""


def test_it_waits_for_a_server_that_is_late_and_names_what_is_lost(desk: Desk, ran: Ran) -> None:
    late = desk.run("-c", LATE)
    assert (late.returncode, late.stderr) == (0, "")
    [said, first] = (each[each.index("\n1. ") :] for each in (late.stdout, ran.process.stdout))
    assert said == first[: first.index("  written ")]
    lost = desk.run("-c", LATE.replace("{}", '{"gpt-6-sol": (3, None)}').replace("> 2", "> 99"))
    assert lost.returncode == 1
    assert re.search(r"gpt-6-sol has 4 calls for USD 0\.\d+ in the ledger, 3 for unk", lost.stderr)
    assert "shop-topics has 2 calls for USD unknown in the ledger, 0 for unknown" in lost.stderr


def test_a_billionth_of_a_dollar_and_every_call_is_the_limit_of_agreement() -> None:
    usd, near, far = Decimal("0.001"), Decimal("0.0010000009"), Decimal("0.00100001")
    ledger: Sums = {"a": (1, usd), "b": (1, usd), "c": (1, usd), "d": (1, usd), "e": (1, None)}
    stored: Sums = {"a": (1, near), "b": (1, far), "c": (2, usd), "d": (1, None), "e": (1, usd)}
    ledger |= {"f": (1, None), "g": (1, usd)}  # one counts fewer, one has no such calls
    stored |= {"f": (2, None), "h": (1, usd)}
    verdicts = "".join(verdict[0] for verdict, _ in reconcile(ledger, stored))
    assert verdicts == "addnnddd", "agree, differ or not compared, from a to h"


def test_a_cell_that_a_spreadsheet_would_run_is_written_as_text(tmp_path: Path) -> None:
    names = ["=HYPERLINK(1)", "+1", "-1", "@x", "\tx", "\rx", "＝1", "a=b", "(no user)"]  # noqa: RUF001
    write_csv(tmp_path / "a.csv", [("user", name, 1, "unknown") for name in names])
    written = [row[1] for row in cells(tmp_path / "a.csv")[1:]]
    assert written == [*(f"'{name}" for name in names[:7]), "a=b", "(no user)"]
    assert may_write(tmp_path / "a.csv"), "a report of ours is replaced"
    assert not may_write(tmp_path)
    assert not may_write(tmp_path / "nowhere" / "a.csv")
    assert not may_write(tmp_path / ("a" * 300))
    assert not may_write(Path("/dev/zero"))


@pytest.mark.parametrize("text", ["by,name\nday,it rained\n", ""])
def test_what_is_not_ours_is_refused_before_a_call_is_paid_for(text: str, desk: Desk) -> None:
    path = desk.folder / "costs.csv"
    path.write_text(text)
    ran = desk.run(*RECIPE, "--csv", str(path))
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
    assert str(path) in ran.stderr
    assert path.read_text() == text
    assert not desk.db.exists()


def test_without_tracing_the_ledger_is_all_there_is(desk: Desk) -> None:
    off = {"LANGFUSE_TRACING_ENABLED": "false", "PYTHONPATH": REFUSING, "REFUSE_SOCKETS": "all"}
    off["REFUSED_SOCKETS_FILE"] = str(desk.folder / "refused")
    ran = desk.run(*RECIPE, **off)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert re.search(r"gpt-6-sol +4 +0\.00\d+", ran.stdout)
    assert ran.stdout.endswith("  No report: tracing is off.\n")
    with_file = desk.run(*RECIPE, "--csv", str(desk.folder / "a.csv"), **off)
    assert with_file.returncode == 2
    assert with_file.stderr == "There would be no report to write: tracing is off.\n"
    assert not (desk.folder / "a.csv").exists()
    assert not (desk.folder / "refused").exists()
