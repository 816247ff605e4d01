"""Report what your calls cost, and check the report against a ledger of your own.

A dashboard adds up whatever reached it. If some calls never arrived, or a price in its list
is wrong, the total still looks fine. Keep a second account where the calls are made, and
compare the two before anybody pays by them.

Run it:

    python -m recipes.cost_report
    python -m recipes.cost_report --csv costs.csv

The traces have these shapes:

    answer-request          chain       x 12
      write-answer          generation

    answer-request          chain
      classify-question     generation

The exit status is 0 when the two accounts agree; 1 when they differ, or when not every call
could be read back; 2 when an option is wrong.

Try next: in `common/pricing.py`, change a price of gpt-6-sol and run again. The model is named
with both amounts.
"""

import argparse
import csv
import json
import os
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
from langfuse import Langfuse, get_client, observe, propagate_attributes
from langfuse.openai import OpenAI

from common.client import connect, tracing_is_on
from common.console import fail, progress, show_line, show_result, show_section, show_table, waiting
from common.pricing import cost_of
from common.readback import poll
from common.retriever import search
from common.settings import read_settings
from recipes import Arguments

OTHER_MODEL = "gpt-6-sol"  # sales wants the larger one
MISSPELLED = "gpt-6-lunna"  # a mistake in somebody's settings: these calls fail
OWN_MODEL = "shop-topics"  # our own, traced by hand: neither price list has it
AGREE_WITHIN = Decimal("0.000000001")  # USD: a server rounds its sums
INCOMPLETE = "tracing is off, or LANGFUSE_SAMPLE_RATE leaves calls out."
NONE = Decimal(0)


# %% 1. Keep a ledger where the calls are made
#
# Every response says how many tokens it used. Price them at once, in Decimal: floats lose
# what a single call costs. A call without a price is counted, never entered as $0.


@dataclass
class Ledger:
    """Your own account, by model: all calls, their USD, and the calls that have no price."""

    calls: Counter[str] = field(default_factory=Counter)
    usd: defaultdict[str, Decimal] = field(default_factory=lambda: defaultdict(Decimal))
    unpriced: Counter[str] = field(default_factory=Counter)

    def add(self, model: str, usage: Mapping[str, Any]) -> None:
        """Enter a call that was answered, at the prices in `common/pricing.py`."""
        cost = cost_of(model, usage)
        self.calls[model] += 1
        if cost is None:
            self.unpriced[model] += 1
        else:
            self.usd[model] += cost

    def cost(self, model: str) -> Decimal | None:
        """Return what a model has cost in USD, or None where no call of it has a price."""
        return None if self.unpriced[model] and not self.usd[model] else self.usd[model]


# %% 2. Give every call an owner
#
# The team is a tag and the user is the user. Both are known before the call, so set them
# around it. `run` in the metadata tells these calls from all the others in the project.


@dataclass(frozen=True)
class Request:
    """One question, the model that gets it, and on whose behalf it is asked."""

    question: str
    model: str
    team: str | None  # None: a job that runs at night, for nobody in particular
    user: str | None


def plan_requests(model: str) -> list[Request]:
    """Return a small day of the shop: two teams, four users, and one job without an owner."""
    questions = ("What does express delivery cost?", "How long is the warranty?")
    owners = [("support", "ada", model), ("support", "bob", model), (None, None, model)]
    owners += [("sales", "cyd", OTHER_MODEL), ("sales", "dan", OTHER_MODEL)]
    day = [Request(question, asked, t, u) for t, u, asked in owners for question in questions]
    invoice = [Request("Can I pay by invoice?", m, "sales", "dan") for m in (MISSPELLED, model)]
    return [*day, *invoice, Request("Where is my order?", OWN_MODEL, "support", "ada")]


def write_answer(client: OpenAI, ledger: Ledger, request: Request) -> str:
    """Ask the model, and enter the call in the ledger, whether it was answered or refused."""
    passages = "\n".join(passage.text for passage in search(request.question))
    told = f"Answer in one sentence, only from these passages:\n{passages}"
    asked = [{"role": "system", "content": told}, {"role": "user", "content": request.question}]
    try:
        response = client.chat.completions.create(
            name="write-answer", model=request.model, messages=asked, max_completion_tokens=500
        )
    except openai.NotFoundError:  # no such model; it cost nothing, and Langfuse has it, too
        ledger.calls[request.model] += 1
        return "Sorry, I cannot answer at the moment."
    ledger.add(response.model, response.usage.model_dump() if response.usage else {})
    return response.choices[0].message.content or ""


@observe(name="classify-question", as_type="generation", capture_input=False)
def classify_question(ledger: Ledger, request: Request) -> str:
    """Sort a question with a model of our own, which has tokens and no price.

    In Langfuse: the generation has usage and no cost. No sum contains it, and no sum says so.
    """
    usage = {"input": len(request.question.split()), "output": 1}
    get_client().update_current_generation(
        model=request.model, input=request.question, usage_details=usage
    )
    ledger.add(request.model, usage)
    return "tracking"


def answer_request(client: OpenAI, ledger: Ledger, request: Request, run: str) -> str:
    """Answer one request of the day, on behalf of its team and user.

    In Langfuse: filter Tracing by the tag `team:sales` to see what that team pays for.
    """
    tags = [f"team:{request.team}"] if request.team else []
    with (
        propagate_attributes(user_id=request.user, tags=tags, metadata={"run": run}),
        get_client().start_as_current_observation(
            name="answer-request", as_type="chain", input=request.question
        ) as root,
    ):
        if request.model == OWN_MODEL:
            answer = classify_question(ledger, request)
        else:
            answer = write_answer(client, ledger, request)
        root.update(output=answer)
    return answer


# %% 3. Let Langfuse add it up
#
# The Metrics API sums where the data is, so you never page through a million calls. Its sums
# leave out calls without a cost, and do not say so: count those, too.

KINDS = {"model": "providedModelName", "team": "tags", "user": "userId", "day": "time_dimension"}


@dataclass
class Line:
    """One row of the report; `usd` is None where no call of it has a known cost."""

    kind: str
    name: str
    calls: int = 0
    usd: Decimal | None = None
    unpriced: int = 0


def only_run(run: str) -> list[dict[str, str]]:
    """Return the filters that find the calls of this run, and no others."""
    by_type = {"type": "string", "column": "type", "operator": "=", "value": "GENERATION"}
    by_run = {"type": "stringObject", "column": "metadata", "key": "run", "operator": "="}
    return [by_type, {**by_run, "value": run}]


def ask_metrics(langfuse: Langfuse, run: str, kind: str = "") -> list[dict[str, Any]]:
    """Return calls and USD of this run, in one row or by one of KINDS.

    In Langfuse: under Dashboards, a chart over observations of type GENERATION takes the same
    breakdown. Of users, who can be many, the API gives at most the first `row_limit`.
    """
    now, by = datetime.now(UTC), KINDS.get(kind)
    measures = (("sum", "totalCost"), ("count", "count"))
    query = {
        "view": "observations",
        "metrics": [{"measure": what, "aggregation": how} for how, what in measures],
        "dimensions": [{"field": by}] if by and kind != "day" else [],
        "timeDimension": {"granularity": "day"} if kind == "day" else None,
        "orderBy": [{"field": "sum_totalCost", "direction": "desc"}] if kind == "user" else [],
        "config": {"row_limit": 1000},
        "filters": only_run(run),
        "fromTimestamp": (now - timedelta(days=1)).isoformat(),
        "toTimestamp": (now + timedelta(minutes=1)).isoformat(),
    }
    asked = json.dumps({key: value for key, value in query.items() if value})
    rows: list[dict[str, Any]] = langfuse.api.metrics.metrics(query=asked).data
    return rows


def label_of(kind: str, row: Mapping[str, Any]) -> str:
    """Return what a row is about: `label_of("team", {"tags": ["team:sales"]}) -> "sales"`.

    `label_of("user", {"userId": None}) -> "(no user)"`
    """
    value = row[KINDS[kind]]
    if kind == "team":
        value = next((tag[5:] for tag in value or [] if tag.startswith("team:")), None)
    return value or f"(no {kind})"


def calls_without_cost(langfuse: Langfuse, run: str) -> list[dict[str, Any]]:
    """Return the calls of this run whose cost Langfuse does not know, as rows like a metric's.

    In Langfuse: generations with an empty Cost. A call that failed before it used a token is
    not among them: it cost nothing.
    """
    no_cost = {"type": "null", "column": "totalCost", "operator": "is null", "value": ""}
    wanted = {"filter": json.dumps([*only_run(run), no_cost]), "limit": 1000}
    wanted["fields"] = "core,basic,model,usage,trace_context"
    calls, cursor = [], None
    while True:
        page = langfuse.api.observations.get_many(**wanted, cursor=cursor)
        calls += [call for call in page.data if call.usage_details or call.level != "ERROR"]
        cursor = page.meta.cursor
        if cursor is None:
            days = [call.start_time.astimezone(UTC).date().isoformat() for call in calls]
            values = [(c.model, c.tags, c.user_id, day) for c, day in zip(calls, days, strict=True)]
            return [dict(zip(KINDS.values(), each, strict=True)) for each in values]


def report_lines(
    kind: str, metrics: Iterable[Mapping[str, Any]], unpriced: Iterable[Mapping[str, Any]]
) -> list[Line]:
    """Return the report's rows for one of KINDS, the most expensive first."""
    lines: dict[str, Line] = {}
    missing = Counter(label_of(kind, call) for call in unpriced)
    for row in metrics:
        if not int(row["count_count"]):
            continue  # a day on which nothing happened
        name = label_of(kind, row)
        line = lines.setdefault(name, Line(kind, name, unpriced=missing[name]))
        line.calls += int(row["count_count"])
        usd = round(Decimal(str(row["sum_totalCost"] or 0)), 9)
        if usd or not line.unpriced:
            line.usd = (line.usd or NONE) + usd
    return sorted(lines.values(), key=lambda line: (-(line.usd or NONE), line.name))


# %% 4. Reconcile the two accounts
#
# Both count the same calls, and each prices them by a list of its own. Where they agree, no
# call was lost or counted twice, and the two lists have the same prices for these models. It
# says nothing about prices that both have wrong: only the invoice does.


@dataclass
class Reconciliation:
    """What two accounts say of the same calls, model by model."""

    calls: int = 0
    usd: Decimal = NONE
    left_out: list[str] = field(default_factory=list)  # calls that an account has no price for
    differences: list[str] = field(default_factory=list)


def reconcile(ledger: Ledger, stored: Iterable[Line]) -> Reconciliation:
    """Compare calls and USD per model; a billionth of a dollar is the limit of agreement.

    A model for which one account has no price at all is left out of the comparison of USD,
    but not out of that of calls.
    """
    result, by_model = Reconciliation(), {line.name: line for line in stored}
    for model in sorted({*ledger.calls, *by_model}):
        theirs = by_model.get(model, Line("model", model, usd=NONE))
        calls, ours = ledger.calls[model], ledger.cost(model)
        said = (
            f"{model}: the ledger has {sum_text(ours, calls)}, "
            f"Langfuse has {sum_text(theirs.usd, theirs.calls)}"
        )
        if calls == theirs.calls and (ours is None or theirs.usd is None):
            result.left_out.append(said)
        elif calls != theirs.calls or abs((ours or NONE) - (theirs.usd or NONE)) > AGREE_WITHIN:
            result.differences.append(said)
        else:
            result.calls += calls
            result.usd += ours or NONE
    return result


def usd_text(usd: Decimal | None) -> str:
    """Return an amount to a billionth of a dollar: `usd_text(None) -> "no price"`."""
    return "no price" if usd is None else f"${usd:.9f}"


def sum_text(usd: Decimal | None, calls: int) -> str:
    """Return a sum and what it is of: `sum_text(None, 1) -> "no price for 1 call"`."""
    return f"{usd_text(usd)} for {calls} call{'s' * (calls != 1)}"


# %% 5. Hand the report to a spreadsheet
#
# Names come from traces, where anybody can write, and a spreadsheet runs a cell that begins
# with "=". The file is replaced in one step, and only if it is a report of ours.

COLUMNS = ("kind", "name", "calls", "USD", "calls without a price")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001


def refuse_foreign_file(path: Path) -> None:
    """Raise FileExistsError where something lies at this path that is no cost report of ours."""
    if path.exists() or path.is_symlink():
        begin = ",".join(COLUMNS).encode()
        is_ours = path.is_file() and path.read_bytes()[: len(begin)] == begin
        if not is_ours:
            raise FileExistsError(f"{path} exists and is not a cost report: choose another name")


def write_csv(path: Path, lines: Iterable[Line]) -> None:
    """Write the report; an unknown cost is an empty cell, a name like a formula becomes text."""
    refuse_foreign_file(path)
    path = path.resolve()  # a link stays one
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with draft.open("x", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for line in lines:
                name = f"'{line.name}" if line.name.startswith(FORMULA) else line.name
                usd = "" if line.usd is None else f"{line.usd:.9f}"
                writer.writerow((line.kind, name, line.calls, usd, line.unpriced))
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def parse_csv(text: str) -> Path:
    """Return the path of the report; refuse it here, before a call is paid for."""
    path = Path(text)
    try:
        refuse_foreign_file(path)
        if not path.parent.is_dir():
            raise NotADirectoryError(f"{path.parent} is not a folder")
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return path


def read_lines(langfuse: Langfuse, run: str, expected: int) -> list[Line]:
    """Return the report as soon as so many calls are stored; give up after half a minute."""
    with waiting("Waiting until every call is stored"):
        [total] = poll(
            lambda: ask_metrics(langfuse, run),
            until=lambda rows: int(rows[0]["count_count"]) >= expected,
        )
    if int(total["count_count"]) < expected:
        fail(f"Only {total['count_count']} of {expected} calls can be read back.", 1)
    unpriced = calls_without_cost(langfuse, run)
    return [
        line
        for kind in KINDS
        for line in report_lines(kind, ask_metrics(langfuse, run, kind), unpriced)
    ]


def show_report(lines: list[Line]) -> None:
    """Print a table for each of KINDS."""
    for kind in KINDS:
        rows = [
            (line.name, line.calls, usd_text(line.usd), line.unpriced or "")
            for line in lines
            if line.kind == kind
        ]
        show_table((kind, "calls", "USD", "without a price"), rows)


def main() -> None:
    """Make the calls and keep the ledger; then ask Langfuse, compare, and write the file."""
    parser = Arguments(prog="python -m recipes.cost_report")
    parser.add_argument("--csv", type=parse_csv, metavar="FILE", help="write the report, too")
    csv_file = parser.parse_args().csv
    connect()
    is_complete = tracing_is_on() and float(read_settings()["LANGFUSE_SAMPLE_RATE"].value) == 1
    if csv_file and not is_complete:
        fail(f"There would be no report to write: {INCOMPLETE}", 2)
    langfuse, client, ledger, run = Langfuse(), OpenAI(timeout=60), Ledger(), uuid.uuid4().hex
    requests = plan_requests(os.environ["OPENAI_MODEL"])

    show_section("1. What the ledger says")
    with progress("Answering", len(requests)) as done:
        for request in requests:
            answer_request(client, ledger, request, run)
            done()
    rows = [(model, n, usd_text(ledger.cost(model))) for model, n in ledger.calls.items()]
    show_table(("model", "calls", "USD"), rows)
    langfuse.flush()  # hand over what is waiting before anyone adds it up
    if not is_complete:
        show_line(f"  No report: {INCOMPLETE}")
        return

    show_section("2. What Langfuse adds up, by model, team, user and day")
    lines = read_lines(langfuse, run, ledger.calls.total())
    show_report(lines)

    show_section("3. The two accounts, compared")
    show_line("  The ledger has the prices of common/pricing.py, Langfuse those of its own list.")
    result = reconcile(ledger, [line for line in lines if line.kind == "model"])
    show_result("they agree on", sum_text(result.usd, result.calls))
    for left_out in result.left_out:
        show_result("not compared", left_out)
    if result.differences:
        unwritten = f" {csv_file} was not written." if csv_file else ""
        fail(f"The accounts differ. {'; '.join(result.differences)}.{unwritten}", 1)
    show_line("  So no call was lost or counted twice, and the prices compared are the same.")
    if csv_file:
        write_csv(csv_file, lines)
        show_result("written", csv_file)


if __name__ == "__main__":
    main()
