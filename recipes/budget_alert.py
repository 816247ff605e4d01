"""Tell somebody when spend, errors or slow answers go over a limit.

A loop that calls a model all night, a provider that fails every tenth call, answers that
take half a minute: all of it is in Langfuse, if somebody looks. This looks for you. It counts
calls of a model only (generations and embeddings), and not the steps around them.

Run it:

    python -m recipes.budget_alert --period 24h --max-usd 0.0001 --max-error-rate 0.05

With `--webhook` one message goes to a chat, whose field `text` is in the form that Slack takes.
From cron, with `--webhook=https://…` in a file, so that no list of processes shows it:

    0 * * * * cd /srv/app && .venv/bin/python -m recipes.budget_alert --max-usd 5 @webhook.txt

The exit status is 0 within all limits; 1 over one, and told to the webhook if there is one;
2 when it could not tell: Langfuse or the webhook did not answer, or an option is wrong.

Try next: run lesson 4, then this with `--by team`, and find out who `unknown` is.
"""

import argparse
import html
import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import httpx
from langfuse import Langfuse
from langfuse.api.core import ApiError

from common.client import connect, tracing_is_on
from common.console import Arguments, fail, show_line, show_result, usd_text
from common.readback import trace_link
from common.settings import Setting, SettingsError, check_url

TOP_NAMES = 5  # of spenders, and of models without a price, in the message
MODELS = ["GENERATION", "EMBEDDING"]
CALLS = {"type": "stringOptions", "column": "type", "operator": "any of", "value": MODELS}
FAILED = {"type": "string", "column": "level", "operator": "=", "value": "ERROR"}
Rows = list[dict[str, Any]]


# %% 1. Measure the period
#
# The Metrics API adds up where the data lies. Only calls of a model count: the duration of
# an agent contains those of its calls, and many small steps make errors look rare.


@dataclass(frozen=True)
class Period:
    """The stretch of time in which a call must have begun."""

    start: datetime
    end: datetime


def ask_metrics(
    langfuse: Langfuse, period: Period, *measures: str, by: str = "", only: Any = None, top: int = 1
) -> Rows:
    """Return one row, or the `top` values of a dimension, largest first measure first.

    In Langfuse: the same query builds a chart under Dashboards.
    """
    pairs = [measure.split("_") for measure in measures]
    query = {
        "view": "observations",
        "metrics": [{"measure": what, "aggregation": how} for how, what in pairs],
        "dimensions": [{"field": by}] if by else [],
        "orderBy": [{"field": measures[0], "direction": "desc"}] if by else [],
        "config": {"row_limit": top},
        "filters": [CALLS, only] if only else [CALLS],
        "fromTimestamp": period.start.isoformat(),
        "toTimestamp": period.end.isoformat(),
    }
    rows: Rows = langfuse.api.metrics.metrics(query=json.dumps(query)).data
    return rows


def usd_of(row: dict[str, Any]) -> Decimal:
    """Return the summed cost of a row in USD, rounded to a billionth."""
    return round(Decimal(str(row["sum_totalCost"] or 0)), 9)


@dataclass
class Measured:
    """What was found; the share of errors and the 95th percentile need at least one call."""

    calls: int
    errors: int
    usd: Decimal
    p95_seconds: Decimal | None
    unpriced: Counter[str]  # calls by model

    def values(self) -> dict[str, Decimal | None]:
        """Return the three numbers that have a limit, by its name."""
        rate = Decimal(self.errors) / self.calls if self.calls else None
        return {"usd": self.usd, "error_rate": rate, "p95_seconds": self.p95_seconds}


def measure(langfuse: Langfuse, period: Period) -> Measured:
    """Return calls, errors, spend in USD and the 95th percentile of latency in seconds."""
    wanted = "count_count", "sum_totalCost", "p95_latency"
    [total] = ask_metrics(langfuse, period, *wanted)
    [failed] = ask_metrics(langfuse, period, "count_count", only=FAILED)
    p95 = total["p95_latency"]
    return Measured(
        calls=int(total["count_count"]),
        errors=int(failed["count_count"]),
        usd=usd_of(total),
        p95_seconds=None if p95 is None else Decimal(str(p95)) / 1000,
        unpriced=count_unpriced(langfuse, period),
    )


# %% 2. Name what the sum leaves out
#
# A model without a price, or a stream without usage, adds nothing to the sum. So spend is
# "at least" as long as there is one such call, and the message says of which model.


def count_unpriced(langfuse: Langfuse, period: Period) -> Counter[str]:
    """Return how many calls have no stored cost, by model.

    In Langfuse: the table of observations with total cost 0. Some of those are free, and
    a call that failed before it used a token has cost nothing.
    """
    bounds = ((">=", period.start), ("<=", period.end))
    conditions = [
        CALLS,
        {"type": "number", "column": "totalCost", "operator": "=", "value": 0},
        *(
            {"type": "datetime", "column": "startTime", "operator": sign, "value": at.isoformat()}
            for sign, at in bounds
        ),
    ]
    get_many, found, cursor = langfuse.api.observations.get_many, Counter[str](), None
    while True:
        fields, wanted = "core,basic,model,usage", json.dumps(conditions)
        page = get_many(filter=wanted, fields=fields, limit=1000, cursor=cursor)
        for node in page.data:
            is_known = "total" in (node.cost_details or {})
            if not is_known and (node.usage_details or node.level != "ERROR"):
                found[node.model or "no model"] += 1
        cursor = page.meta.cursor
        if cursor is None:
            return found


# %% 3. Find out who, and where to look
#
# An alert that names a number sends people searching. One that names the largest spenders
# and links one bad trace lets them begin.


def top_spenders(langfuse: Langfuse, period: Period, by: str) -> list[tuple[str, Decimal]]:
    """Return the largest spenders in USD, by `user` or by `team` (a tag such as `team:sales`)."""
    column = {"user": "userId", "team": "tags"}[by]
    usd: defaultdict[str, Decimal] = defaultdict(Decimal)
    for row in ask_metrics(langfuse, period, "sum_totalCost", by=column, top=1000):
        team = next((tag[5:] for tag in row.get("tags", []) if tag.startswith("team:")), "")
        usd[row.get("userId") or team or "unknown"] += usd_of(row)
    ranked = sorted(usd.items(), key=lambda pair: -pair[1])
    return [pair for pair in ranked if pair[1]][:TOP_NAMES]


def worst_trace(langfuse: Langfuse, period: Period, limit: str) -> str:
    """Return a link to the trace that did most to exceed this limit.

    In Langfuse: the trace with the highest cost, the most errors, or the slowest call.
    """
    largest = {"usd": "sum_totalCost", "error_rate": "count_count", "p95_seconds": "max_latency"}
    only = FAILED if limit == "error_rate" else None
    rows = ask_metrics(langfuse, period, largest[limit], by="traceId", only=only)
    return trace_link(langfuse, rows[0]["traceId"])


# %% 4. Say it in one message
#
# People read `text`, programs the fields beside it. Names come from traces: in Slack a user
# called `<!channel>` would wake everybody, so what is special there is escaped.

WORDS = {"usd": "spend", "error_rate": "error rate", "p95_seconds": "p95 latency"}
Limits = dict[str, Decimal]  # by these names


def exceeded(measured: Measured, limits: Limits) -> list[str]:
    """Return the names of the limits that the numbers are above."""
    values = measured.values()
    return [name for name, most in limits.items() if (values[name] or 0) > most]


def amount(name: str, value: Decimal | None) -> str:
    """Return one of the three numbers as people read it: `amount("usd", 1) -> "$1.000000"`."""
    if value is None:
        return "unknown, no calls"
    forms = {"usd": usd_text(value), "error_rate": f"{value:.1%}", "p95_seconds": f"{value:.2f} s"}
    return forms[name]


def visible(name: str) -> str:
    """Return at most 100 characters of a name, on one line."""
    return "".join(letter if letter.isprintable() else "?" for letter in name[:100])


def plain(name: str) -> str:
    """Return a name that is only text to Slack: `plain("<!here>") -> "&lt;!here&gt;"`."""
    return html.escape(visible(name), quote=False)


def unpriced_text(unpriced: Counter[str]) -> str:
    """Return what the sum leaves out, as a sentence."""
    models = ", ".join(f"{n} of {plain(model)}" for model, n in unpriced.most_common(TOP_NAMES))
    return f"Spend is at least that: {unpriced.total()} calls have no price ({models})."


def write_message(
    measured: Measured, limits: Limits, period: Period, top: list[tuple[str, Decimal]], link: str
) -> dict[str, Any]:
    """Return the message for the webhook: `text`, and every number by itself."""
    values, over = measured.values(), exceeded(measured, limits)
    found = [
        f"{WORDS[name]} {amount(name, values[name])} (limit {amount(name, limits[name])})"
        for name in over
    ]
    hours = (period.end - period.start).total_seconds() / 3600
    parts = [f"Over the limit in the last {hours:g} hours: {', '.join(found)}."]
    if measured.unpriced:
        parts.append(unpriced_text(measured.unpriced))
    if top:
        spenders = ", ".join(f"{plain(name)} {usd_text(usd)}" for name, usd in top)
        parts.append(f"Most was spent by {spenders}.")
    return {
        "text": " ".join([*parts, f"Look at {link}"]),
        "exceeded": over,
        "limits": limits,
        "measured": {**values, "calls": measured.calls, "errors": measured.errors},
        "calls_without_price": dict(measured.unpriced.most_common(TOP_NAMES)),
        "top": [{"name": name, "usd": usd} for name, usd in top],
        "period": {"from": period.start.isoformat(), "to": period.end.isoformat()},
        "look_at": link,
    }


# %% 5. Deliver it, or say that nobody was told
#
# A webhook's address is a password: whoever has it can write to the chat. Only its host is
# ever shown. An alert that was not delivered is a failure of its own, and has its status.


def deliver(webhook: str, message: dict[str, Any]) -> str:
    """Post the message as JSON; return why it was not accepted, or an empty text."""
    host, body = urlsplit(webhook).hostname, json.dumps(message, default=float)
    headers = {"Content-Type": "application/json"}
    try:
        answer = httpx.post(webhook, content=body, headers=headers, timeout=10)
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        return f"{host} cannot be reached ({type(error).__name__})"
    return "" if answer.is_success else f"{host} answered {answer.status_code}"


def webhook(text: str) -> str:
    """Return an address to post to; the error does not repeat it."""
    try:
        check_url(Setting("the webhook", text, "command line"))
    except SettingsError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def period(text: str) -> timedelta:
    """Return a stretch of time: `period("24h") -> timedelta(days=1)`; also `30m` and `7d`."""
    found = re.fullmatch(r"([1-9]\d{0,4})([mhd])", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not a period such as 30m, 24h or 7d")
    unit = {"m": "minutes", "h": "hours", "d": "days"}[found[2]]
    return timedelta(**{unit: int(found[1])})


def limit(text: str) -> Decimal:
    """Return a limit of 0 or more."""
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number such as 5 or 0.05")
    return Decimal(text)


def share(text: str) -> Decimal:
    """Return a limit from 0 to 1."""
    if limit(text) > 1:
        raise argparse.ArgumentTypeError(f"{text} is more than all calls: 5 % is written 0.05")
    return limit(text)


def read_options() -> argparse.Namespace:
    """Return the options of the command line, the limits that were given as `limits`."""
    parser = Arguments(prog="python -m recipes.budget_alert", fromfile_prefix_chars="@")
    parser.add_argument("--period", type=period, default="24h", help="default: %(default)s")
    parser.add_argument("--max-usd", type=limit, help="spend of the period")
    parser.add_argument("--max-error-rate", type=share, help="share of calls: 0.05 is 5 %%")
    parser.add_argument(
        "--max-p95-seconds", type=limit, help="95th percentile of how long calls take"
    )
    parser.add_argument("--webhook", type=webhook, metavar="URL", help="better in an @file")
    parser.add_argument("--by", choices=["user", "team"], help="name the largest spenders")
    options = parser.parse_args()
    given = {"usd": options.max_usd, "error_rate": options.max_error_rate}
    given["p95_seconds"] = options.max_p95_seconds
    options.limits = {name: most for name, most in given.items() if most is not None}
    if not options.limits:
        parser.error("give at least one of --max-usd, --max-error-rate and --max-p95-seconds")
    return options


def show_report(measured: Measured, limits: Limits, top: list[tuple[str, Decimal]]) -> None:
    """Print what was found, within the limits or not."""
    show_line("")
    show_result("calls of a model", f"{measured.calls}, of which {measured.errors} failed")
    for name, value in measured.values().items():
        most = f"limit {amount(name, limits[name])}" if name in limits else "no limit"
        show_result(WORDS[name], f"{amount(name, value):<20} {most}")
    for model, calls in measured.unpriced.items():
        show_result("cost unknown", f"{calls} calls of {visible(model)}, so spend is at least that")
    for name, usd in top:
        show_result(visible(name), usd_text(usd))


def main() -> None:
    """Measure, compare, and tell; the exit status says how it went."""
    options = read_options()
    langfuse = connect(asks_model=False)
    if not tracing_is_on():
        fail("Cannot tell: tracing is off. Unset LANGFUSE_TRACING_ENABLED.", 2)
    now = datetime.now(UTC)
    asked = Period(now - options.period, now)
    try:
        measured = measure(langfuse, asked)
        over = exceeded(measured, options.limits)
        top = top_spenders(langfuse, asked, options.by) if options.by else []
        link = worst_trace(langfuse, asked, [*over, "usd"][0]) if measured.calls else ""
    except (httpx.HTTPError, ApiError) as error:
        said = f"it answered {error.status_code}" if isinstance(error, ApiError) else error
        fail(f"Cannot tell whether a limit is exceeded: Langfuse cannot be read ({said}).", 2)
    show_report(measured, options.limits, top)
    if not over:
        show_line(f"  Within the limits. {link or 'There was no call in this period.'}")
        return
    message = write_message(measured, options.limits, asked, top, link)
    problem = deliver(options.webhook, message) if options.webhook else ""
    if problem:
        fail(f"Nobody was told, {problem}. {message['text']}", 2)
    fail(message["text"], 1)


if __name__ == "__main__":
    main()
