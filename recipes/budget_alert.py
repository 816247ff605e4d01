"""Tell somebody when spend, errors or slow answers go over a limit.

A loop that calls a model all night, a provider that fails every tenth call, answers that
take half a minute: it is all in Langfuse, if somebody looks. This looks for you.

Run it:

    python -m recipes.budget_alert --period 24h --max-usd 0.0001 --max-error-rate 0.05

With `--webhook` it also posts a message, in the form that Slack accepts. The address is a
secret, so let cron read it from a file that contains `--webhook=https://…`:

    0 * * * * cd /srv/app && .venv/bin/python -m recipes.budget_alert --max-usd 5 @webhook.txt

The exit status is 0 within all limits, 1 over a limit, and 2 if it cannot tell: Langfuse or
the webhook did not answer, or an option is wrong.

Try next: run lesson 4, then this with `--max-usd 0 --webhook http://127.0.0.1:9`, where nobody
listens. The status is 2 and not 1, because nobody was told.
"""

import argparse
import html
import json
import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import httpx
from langfuse import Langfuse
from langfuse.api.core import ApiError

from common.client import connect, tracing_is_on
from common.console import fail, show_line, show_link, show_result, usd_text
from common.settings import Setting, SettingsError, check_url, choose_destination, read_settings
from recipes import Arguments

MODELS = ["GENERATION", "EMBEDDING"]
CALLS = {"type": "stringOptions", "column": "type", "operator": "any of", "value": MODELS}
WORDS = {"usd": "spend", "error_rate": "error rate", "p95_seconds": "p95 latency"}
Numbers = dict[str, Decimal]  # by these names
Period = tuple[datetime, datetime]  # from, to


# %% 1. Measure the period
#
# The Metrics API adds up on the server. Only model calls count (generations and embeddings):
# an agent's duration includes that of its calls, and the many small steps around them would
# make errors look rare.


def ask_metrics(
    langfuse: Langfuse, period: Period, *measures: str, by: str = ""
) -> list[dict[str, Any]]:
    """Return measures such as `sum_totalCost` in one row, or by a dimension, largest first.

    In Langfuse: open Dashboards. Its charts come from the same API, so they show the same sums.
    """
    pairs = [measure.split("_") for measure in measures]
    query = {
        "view": "observations",
        "metrics": [{"measure": what, "aggregation": how} for how, what in pairs],
        "dimensions": [{"field": by}] if by else [],
        "orderBy": [{"field": measures[0], "direction": "desc"}] if by else [],
        "config": {"row_limit": 100},
        "filters": [CALLS],
        "fromTimestamp": period[0].isoformat(),
        "toTimestamp": period[1].isoformat(),
    }
    rows: list[dict[str, Any]] = langfuse.api.metrics.metrics(query=json.dumps(query)).data
    return rows


def measure(langfuse: Langfuse, period: Period) -> Numbers:
    """Return spend in USD, the share of failed calls, and the 95th percentile of their seconds.

    Without any call there is nothing to measure, and the answer is empty.
    """
    [total] = ask_metrics(langfuse, period, "count_count", "sum_totalCost", "p95_latency")
    calls = int(total["count_count"])
    if not calls:
        return {}
    levels = ask_metrics(langfuse, period, "count_count", by="level")
    errors = sum(int(row["count_count"]) for row in levels if row["level"] == "ERROR")
    return {
        "usd": round(Decimal(str(total["sum_totalCost"] or 0)), 9),
        "error_rate": Decimal(errors) / calls,
        "p95_seconds": Decimal(str(total["p95_latency"] or 0)) / 1000,
    }


# %% 2. Find what the sum leaves out, and where to look
#
# A model without a price adds nothing to the spend, however much it is used. And a number
# alone sends people searching, while a link to a trace shows them where to start.


def count_unpriced(langfuse: Langfuse, period: Period) -> Counter[str]:
    """Return how many calls have no stored cost, by model.

    The model's total would hide them behind its calls that have one. A call that failed before
    it used a token cost nothing, and is not counted.
    """
    bounds = [
        {"type": "datetime", "column": "startTime", "operator": sign, "value": at.isoformat()}
        for sign, at in zip((">=", "<="), period, strict=True)
    ]
    no_cost = {"type": "null", "column": "totalCost", "operator": "is null", "value": ""}
    wanted = {"filter": json.dumps([CALLS, no_cost, *bounds]), "fields": "core,basic,model,usage"}
    found, cursor = Counter[str](), None
    while True:
        page = langfuse.api.observations.get_many(**wanted, limit=1000, cursor=cursor)
        for call in page.data:
            if call.usage_details or call.level != "ERROR":
                found[call.model or "no name"] += 1
        cursor = page.meta.cursor
        if cursor is None:
            return found


def costliest_trace(langfuse: Langfuse, period: Period) -> str:
    """Return the id of the trace whose calls cost the most. There must be a call.

    In Langfuse: open it, and look for the step with the highest cost or the most calls.
    """
    rows = ask_metrics(langfuse, period, "sum_totalCost", by="traceId")
    return str(rows[0]["traceId"])


# %% 3. Say it in words
#
# The terminal and the webhook get the same words. Names come from traces, so they are quoted:
# a line break in a name would look like a second message.


def amount(name: str, value: Decimal) -> str:
    """Return a number as people read it: `amount("usd", 1) -> "$1.000000"`."""
    forms = {"usd": usd_text(value), "error_rate": f"{value:.1%}", "p95_seconds": f"{value:.2f} s"}
    return forms[name]


def exceeded(measured: Numbers, limits: Numbers) -> list[str]:
    """Say in words what is over its limit; the list is empty if nothing is."""
    return [
        f"{WORDS[name]} {amount(name, measured[name])} (limit {amount(name, most)})"
        for name, most in limits.items()
        if measured[name] > most
    ]


def counted(number: float, noun: str) -> str:
    """`counted(1, "call") -> "1 call"`, `counted(2, "call") -> "2 calls"`."""
    return f"{number:g} {noun}" if number == 1 else f"{number:g} {noun}s"


def doubts(unpriced: Counter[str]) -> str:
    """Say in words what the spend leaves out, after a space; empty if it is complete."""
    models = (f"{counted(calls, 'call')} of {model!r}" for model, calls in unpriced.most_common(5))
    left_out = f" Spend is at least that: it leaves out {', '.join(models)}, of unknown cost."
    return left_out if unpriced else ""


# %% 4. Deliver it, or say that nobody was told
#
# A webhook's address is a password: whoever has it can write to the chat. Only its host is
# ever shown. An alert that was not delivered is a failure, too, with an exit status of its own.


def deliver(webhook: str, text: str, measured: Numbers, limits: Numbers) -> str:
    """Post the message as JSON; return why it was not accepted, or an empty text.

    The text is escaped: in Slack a model called `<!channel>` would notify everybody.
    """
    message = {"text": html.escape(text, quote=False), "measured": measured, "limits": limits}
    host, body = urlsplit(webhook).hostname, json.dumps(message, default=float)
    headers = {"Content-Type": "application/json"}
    try:
        answer = httpx.post(webhook, content=body, headers=headers, timeout=10)
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        return f"{host} cannot be reached ({type(error).__name__})"
    return "" if answer.is_success else f"{host} answered {answer.status_code}"


def parse_webhook(text: str) -> str:
    """Check an address to post to; an error does not repeat it."""
    try:
        check_url(Setting("the webhook", text, "command line"))
    except SettingsError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def parse_period(text: str) -> timedelta:
    """Return a length of time: `parse_period("24h") -> timedelta(days=1)`; also `7d`."""
    found = re.fullmatch(r"([1-9]\d{0,4})([hd])", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not a period such as 24h or 7d")
    return int(found[1]) * timedelta(hours={"h": 1, "d": 24}[found[2]])


def parse_limit(text: str) -> Decimal:
    """Return a limit of 0 or more."""
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number such as 5 or 0.05")
    return Decimal(text)


def read_options() -> tuple[argparse.Namespace, Numbers]:
    """Return the options of the command line, and the limits among them."""
    parser = Arguments(prog="python -m recipes.budget_alert", fromfile_prefix_chars="@")
    add_option = parser.add_argument
    add_option("--period", type=parse_period, default="24h", help="default: %(default)s")
    add_option("--max-usd", type=parse_limit, help="spend of the period")
    add_option("--max-error-rate", type=parse_limit, help="share of calls: 0.05 is 5 %%")
    add_option("--max-p95-seconds", type=parse_limit, help="19 of 20 calls must be faster")
    add_option("--webhook", type=parse_webhook, metavar="URL", help="better kept in an @file")
    options = parser.parse_args()
    given = {name: getattr(options, f"max_{name}") for name in WORDS}
    limits = {name: most for name, most in given.items() if most is not None}
    if not limits:
        parser.error("give at least one of --max-usd, --max-error-rate and --max-p95-seconds")
    if limits.get("error_rate", 0) > 1:
        parser.error("--max-error-rate is more than all calls: write 5 % as 0.05")
    return options, limits


def main() -> None:
    """Measure, compare, and report; the exit status says how it went."""
    options, limits = read_options()
    connect(asks_model=False)
    langfuse = Langfuse()
    if not tracing_is_on():
        fail("Cannot tell: tracing is off. Unset LANGFUSE_TRACING_ENABLED.", 2)
    now = datetime.now(UTC)
    period = now - options.period, now
    try:
        measured = measure(langfuse, period)
        if not measured:
            show_line("Within the limits: no model was called in this period.")
            return
        doubt = doubts(count_unpriced(langfuse, period))
        trace_id = costliest_trace(langfuse, period)
        link = langfuse.get_trace_url(trace_id=trace_id) or ""
    except (httpx.HTTPError, ApiError) as error:
        said = f"it answered {error.status_code}" if isinstance(error, ApiError) else error
        fail(f"Cannot tell whether a limit is exceeded: Langfuse cannot be read ({said}).", 2)
    for name, value in measured.items():
        most = f"limit {amount(name, limits[name])}" if name in limits else "no limit"
        show_result(WORDS[name], f"{amount(name, value):<12} {most}")
    show_link(f"{'costliest trace':<20} ", link)
    over = exceeded(measured, limits)
    if not over:
        show_line(f"Within the limits.{doubt}")
        return
    # The stand-in may end with this program, and its links open on this machine only.
    where = trace_id if choose_destination(read_settings()).mode == "local" else link
    hours = counted(options.period / timedelta(hours=1), "hour")
    text = (
        f"Over the limit in the last {hours}: {', '.join(over)}.{doubt}"
        f" The costliest trace is {where}"
    )
    problem = deliver(options.webhook, text, measured, limits) if options.webhook else ""
    if problem:
        fail(f"Nobody was told, {problem}. {text}", 2)
    fail(text, 1)


if __name__ == "__main__":
    main()
