"""Report what your calls cost, and check the report against a ledger of your own.

A dashboard adds up whatever reached it. If calls were lost, or a price in its list is wrong,
the total still looks fine. Keep a second account where the calls are made, and compare the
two before anybody pays by them. The exit status is 1 where they differ.

Run it:

    python -m recipes.cost_report  # or with --csv costs.csv

The traces:

    write-answer           generation  x 8

    classify-question      generation  x 2

Try next: in `common/pricing.py`, change a price of gpt-6-sol, run again, and read the last line.
"""

import csv
import json
import os
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from langfuse import Langfuse, get_client, propagate_attributes
from langfuse.openai import OpenAI

from common.client import connect, tracing_is_on
from common.console import fail, show_line, show_result, show_section, show_table, waiting
from common.pricing import cost_of
from common.readback import poll
from common.retriever import search
from recipes import Arguments

QUESTIONS = ["What does express delivery cost?", "How long is the warranty?"]
TEAMS = {"ada": "support", "bob": "support", "cyd": "sales", "dan": "sales"}
OWN_MODEL = "shop-topics"  # our own, traced by hand: neither price list has it
AGREE_WITHIN = Decimal("0.000000001")  # USD: a server rounds its sums
COLUMNS = ("by", "name", "calls", "USD")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001
Sums = dict[str, tuple[int, Decimal | None]]  # calls and USD by name; None: no call has a price


# %% 1. Keep a ledger where the calls are made
#
# Every response says how many tokens it used. Price them at once, in Decimal: floats lose what
# a single call costs. A call without a price is counted, and never entered as $0.


def enter(ledger: Sums, model: str, usage: dict[str, int]) -> None:
    """Add a call to the ledger, at the prices in `common/pricing.py`."""
    (calls, before), usd = ledger.get(model, (0, None)), cost_of(model, usage)
    ledger[model] = calls + 1, before if usd is None else (before or 0) + usd


def write_answer(client: OpenAI, ledger: Sums, model: str, question: str) -> None:
    """Ask the model, and enter the call under the name of the model that answered."""
    told = "Answer in one sentence, only from:\n" + "\n".join(p.text for p in search(question))
    messages = [{"role": "system", "content": told}, {"role": "user", "content": question}]
    response = client.chat.completions.create(
        name="write-answer", model=model, messages=messages, max_completion_tokens=500
    )
    enter(ledger, response.model, response.usage.model_dump() if response.usage else {})


# %% 2. Give every call an owner
#
# The team is a tag and the user is the user. Both are known before the call, so set them
# around it. `run` in the metadata tells these calls from all the others in the project.


def make_calls(client: OpenAI, ledger: Sums, run: str) -> None:
    """Make the calls of two teams with four users, and of a job that belongs to nobody.

    In Langfuse: filter Tracing by the tag `team:sales` to see what that team pays for.
    """
    with propagate_attributes(metadata={"run": run}):
        for question in QUESTIONS:
            for user, team in TEAMS.items():
                model = "gpt-6-sol" if team == "sales" else os.environ["OPENAI_MODEL"]
                with propagate_attributes(user_id=user, tags=[f"team:{team}"]):
                    write_answer(client, ledger, model, question)
            usage = {"input": len(question.split()), "output": 1}
            call = get_client().start_observation(name="classify-question", as_type="generation")
            call.update(model=OWN_MODEL, usage_details=usage).end()
            enter(ledger, OWN_MODEL, usage)


# %% 3. Let Langfuse add it up
#
# The Metrics API sums where the data is, so you never page through a million calls. But its
# sums leave out calls without a cost and do not say so: count those as well.

KINDS = {"model": "providedModelName", "team": "tags", "user": "userId", "day": "time_dimension"}
MEASURES = [("totalCost", "sum"), ("count", "count")]
CALLS = {"column": "type", "operator": "=", "value": "GENERATION", "type": "string"}
RUN = {"column": "metadata", "key": "run", "operator": "=", "type": "stringObject"}
NO_COST = {"column": "totalCost", "operator": "is null", "value": "", "type": "null"}


def sums_by(langfuse: Langfuse, run: str, kind: str) -> Sums:
    """Return calls and USD of this run by one of KINDS, in at most 1000 rows.

    In Langfuse: under Dashboards, chart Observations of type GENERATION by the same breakdown.
    """
    now, field, is_day = datetime.now(UTC), KINDS[kind], kind == "day"
    query = {
        "view": "observations",
        "metrics": [{"measure": what, "aggregation": how} for what, how in MEASURES],
        "dimensions": [] if is_day else [{"field": field}],
        "timeDimension": {"granularity": "day"} if is_day else None,
        "orderBy": [] if is_day else [{"field": "sum_totalCost", "direction": "desc"}],
        "config": {"row_limit": 1000},
        "filters": [CALLS, {**RUN, "value": run}],
        "fromTimestamp": (now - timedelta(days=1)).isoformat(),
        "toTimestamp": (now + timedelta(minutes=1)).isoformat(),
    }
    sums: Sums = {}
    for row in langfuse.api.metrics.metrics(query=json.dumps(query)).data:
        name = " ".join(row[field]) if kind == "team" else row[field]
        usd = Decimal(str(row["sum_totalCost"])) if row["sum_totalCost"] else None
        if int(row["count_count"]):  # a day without calls has a row, too
            sums[name or f"(no {kind})"] = int(row["count_count"]), usd
    return sums


def calls_without_cost(langfuse: Langfuse, run: str) -> Counter[str]:
    """Return how many calls of this run have no cost, by model; 1000 calls are read at most."""
    wanted = json.dumps([CALLS, {**RUN, "value": run}, NO_COST])
    page = langfuse.api.observations.get_many(filter=wanted, fields="basic,model", limit=1000)
    return Counter(call.model or "(no model)" for call in page.data)


# %% 4. Reconcile the two accounts
#
# Both count the same calls, and each prices them by a list of its own. Where they agree, no
# call was lost or counted twice, and both lists say the same. Only the invoice says what is true.


def usd_text(usd: Decimal | None) -> str:
    """Return an amount to a billionth of a dollar: `usd_text(None) -> "unknown"`."""
    return "unknown" if usd is None else f"{usd:.9f}"


def reconcile(ledger: Sums, stored: Sums) -> Iterator[tuple[str, str]]:
    """Yield for each model whether the accounts agree, and what both say."""
    for model in sorted({*ledger, *stored}):
        calls, ours = ledger.get(model, (0, None))
        found, theirs = stored.get(model, (0, None))
        unknown = calls == found and (ours is None or theirs is None)
        apart = abs((ours or Decimal(0)) - (theirs or Decimal(0)))
        same = calls == found and apart <= AGREE_WITHIN
        verdict = "not compared" if unknown else "agree" if same else "differ"
        said = f"{calls} calls for USD {usd_text(ours)} in the ledger"
        yield verdict, f"{model} has {said}, {found} for {usd_text(theirs)} in Langfuse"


# %% 5. Hand the report to a spreadsheet
#
# Names come from traces, where anybody can write, and a spreadsheet runs a cell that begins
# with "=". And a slip in the file's name must not cost you another file.


def may_write(path: Path) -> bool:
    """Return whether a report can go there: over one of ours, or where nothing is yet."""
    try:
        if not path.exists():
            return path.parent.is_dir() and os.access(path.parent, os.W_OK)
        if not path.is_file():  # a folder or a device, which may have no end
            return False
        is_ours = path.read_bytes().startswith(",".join(COLUMNS).encode() + b"\r\n")
    except OSError:  # a file that may not be read, a name that is too long
        return False
    return is_ours and os.access(path, os.W_OK)


def write_csv(path: Path, rows: list[tuple[str, str, int, str]]) -> None:
    """Write the report; a name that looks like a formula becomes text."""
    with path.open("w", encoding="utf-8", newline="") as file:
        for row in [COLUMNS, *rows]:
            csv.writer(file).writerow(f"'{c}" if str(c).startswith(FORMULA) else c for c in row)


def main() -> None:
    """Make the calls and keep the ledger; then ask Langfuse, compare, and report."""
    parser = Arguments(prog="python -m recipes.cost_report")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the report, too")
    path = parser.parse_args().csv
    if path and not may_write(path):
        parser.error(f"{path} is neither a cost report nor a new file in a folder")
    connect()
    if path and not tracing_is_on():
        fail("There would be no report to write: tracing is off.", 2)
    langfuse, ledger, run = Langfuse(), Sums(), uuid.uuid4().hex
    show_section("1. What the ledger says")
    make_calls(OpenAI(timeout=60), ledger, run)
    show_table(COLUMNS[1:], [(name, n, usd_text(usd)) for name, (n, usd) in ledger.items()])
    if not tracing_is_on():
        show_line("  No report: tracing is off.")
        return
    langfuse.flush()
    show_section("2. Does Langfuse say the same?")
    made = sum(calls for calls, _ in ledger.values())
    with waiting("Waiting until every call is stored"):
        stored = poll(
            lambda: sums_by(langfuse, run, "model"),
            until=lambda sums: sum(calls for calls, _ in sums.values()) >= made,
        )
    compared = [*reconcile(ledger, stored)]
    show_table(("they", "by model"), compared)
    if differ := [said for verdict, said in compared if verdict == "differ"]:
        fail(f"The accounts differ: {'; '.join(differ)}.", 1)
    show_line("  So no call was lost or counted twice, and the prices compared are the same.")
    show_section("3. Who spent it?")
    sums = [(kind, sums_by(langfuse, run, kind).items()) for kind in KINDS]
    rows = [(by, name, n, usd_text(usd)) for by, each in sums for name, (n, usd) in each]
    show_table(COLUMNS, rows)
    for model, calls in calls_without_cost(langfuse, run).items():
        show_result("in no sum", f"{calls} calls of {model}, which have no cost")
    if path:
        try:
            write_csv(path, rows)
        except OSError as error:
            fail(f"{path} was not written: {error.strerror}.", 1)
        show_result("written", path)


if __name__ == "__main__":
    main()
