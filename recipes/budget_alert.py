"""Tell somebody when spend, errors or slow answers go over a limit.

A loop that calls a model all night, a provider that fails every tenth call, answers that
take half a minute: all of it is in Langfuse, if somebody looks. This looks for you.

Run it:

    python -m recipes.budget_alert --period 24h --max-usd 0.0001 --max-error-rate 0.05

With `--webhook` it also posts a message, in the form that Slack takes. The address is a
secret, so cron reads it from a file, in which stands `--webhook=https://…`:

    0 * * * * cd /srv/app && .venv/bin/python -m recipes.budget_alert --max-usd 5 @webhook.txt

The exit status is 0 within all limits; 1 over one; 2 when it could not tell: Langfuse or
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
from common.console import fail, show_line, show_result, usd_text
from common.settings import Setting, SettingsError, check_url
from recipes import Arguments

MODELS = ["GENERATION", "EMBEDDING"]
CALLS = {"type": "stringOptions", "column": "type", "operator": "any of", "value": MODELS}
WORDS = {"usd": "spend", "error_rate": "error rate", "p95_seconds": "p95 latency"}
Numbers = dict[str, Decimal]  # by these names
Period = tuple[datetime, datetime]  # from, to


# %% 1. Measure the period
#
# The Metrics API adds up where the data lies. Only calls of a model count (generations and
# embeddings): the duration of an agent contains those of its calls, and the many small steps
# around them would make errors look rare.


def ask_metrics(
    langfuse: Langfuse, period: Period, *measures: str, by: str = ""
) -> list[dict[str, Any]]:
    """Return measures such as `sum_totalCost` in one row, or by a dimension, largest first.

    In Langfuse: the same query builds a chart under Dashboards.
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
    """Return spend in USD, the share of calls that failed, and the 95th percentile of seconds.

    Without a call there is nothing to measure, and nothing in the answer.
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
# A model without a price adds nothing to the spend, however much it is used. And an alert
# that links a trace lets people begin, where a mere number sends them searching.


def count_unpriced(langfuse: Langfuse, period: Period) -> Counter[str]:
    """Return how many calls have no stored cost, by model.

    A sum over the model would hide them behind its calls that have one. A call that failed
    before it used a token has cost nothing.
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
            has_used = call.usage_details or call.level != "ERROR"
            if has_used and "total" not in (call.cost_details or {}):
                found[call.model or "no name"] += 1
        cursor = page.meta.cursor
        if cursor is None:
            return found


def costliest_trace(langfuse: Langfuse, period: Period) -> str:
    """Return a link to the trace whose calls have cost most; there must be a call."""
    rows = ask_metrics(langfuse, period, "sum_totalCost", by="traceId")
    return langfuse.get_trace_url(trace_id=rows[0]["traceId"]) or ""


# %% 3. Say it in words
#
# The same words go to the terminal and to the webhook. Names come from traces, so they are
# quoted: a line break in one would look like a second message.


def amount(name: str, value: Decimal) -> str:
    """Return one of the numbers as people read it: `amount("usd", 1) -> "$1.000000"`."""
    forms = {"usd": usd_text(value), "error_rate": f"{value:.1%}", "p95_seconds": f"{value:.2f} s"}
    return forms[name]


def exceeded(measured: Numbers, limits: Numbers) -> list[str]:
    """Return what is above its limit, as words; empty where all is within."""
    return [
        f"{WORDS[name]} {amount(name, measured[name])} (limit {amount(name, most)})"
        for name, most in limits.items()
        if measured[name] > most
    ]


def hint(unpriced: Counter[str], link: str) -> str:
    """Return what to know beside the numbers, and where to look, as words."""
    models = ", ".join(f"{calls} calls of {model!r}" for model, calls in unpriced.most_common(5))
    doubt = f"Spend is at least that: the cost is unknown of {models}. " if unpriced else ""
    return f"{doubt}The costliest trace is {link}"


# %% 4. Deliver it, or say that nobody was told
#
# A webhook's address is a password: whoever has it can write to the chat. Only its host is
# ever shown. An alert that was not delivered is a failure of its own, and has its status.


def deliver(webhook: str, text: str, measured: Numbers, limits: Numbers) -> str:
    """Post the message as JSON; return why it was not accepted, or an empty text.

    In Slack a model called `<!channel>` would wake everybody, so its text is escaped.
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
    """Return an address to post to; the error does not repeat it."""
    try:
        check_url(Setting("the webhook", text, "command line"))
    except SettingsError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def parse_period(text: str) -> timedelta:
    """Return a stretch of time: `parse_period("24h") -> timedelta(days=1)`; also `7d`."""
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
    add_option("--max-p95-seconds", type=parse_limit, help="19 of 20 calls are not slower")
    add_option("--webhook", type=parse_webhook, metavar="URL", help="better in an @file")
    options = parser.parse_args()
    given = {name: getattr(options, f"max_{name}") for name in WORDS}
    limits = {name: most for name, most in given.items() if most is not None}
    if not limits:
        parser.error("give at least one of --max-usd, --max-error-rate and --max-p95-seconds")
    if limits.get("error_rate", 0) > 1:
        parser.error("--max-error-rate is more than all calls: 5 % is written 0.05")
    return options, limits


def main() -> None:
    """Measure, compare, and tell; the exit status says how it went."""
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
            show_line("Within the limits. There was no call in this period.")
            return
        look = hint(count_unpriced(langfuse, period), costliest_trace(langfuse, period))
    except (httpx.HTTPError, ApiError) as error:
        said = f"it answered {error.status_code}" if isinstance(error, ApiError) else error
        fail(f"Cannot tell whether a limit is exceeded: Langfuse cannot be read ({said}).", 2)
    for name, value in measured.items():
        most = f"limit {amount(name, limits[name])}" if name in limits else "no limit"
        show_result(WORDS[name], f"{amount(name, value):<12} {most}")
    over = exceeded(measured, limits)
    if not over:
        show_line(f"Within the limits. {look}")
        return
    hours = options.period / timedelta(hours=1)
    text = f"Over the limit in the last {hours:g} hours: {', '.join(over)}. {look}"
    problem = deliver(options.webhook, text, measured, limits) if options.webhook else ""
    if problem:
        fail(f"Nobody was told, {problem}. {text}", 2)
    fail(text, 1)


if __name__ == "__main__":
    main()
