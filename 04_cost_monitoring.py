"""Know what every answer costs, before and after.

The bill comes once a month and names nobody. Count tokens before a call and read usage
after it, give every call a user, a team and a feature, and each dollar has an owner the
moment it is spent, and a limit before that.

Run it:

    python 04_cost_monitoring.py

The traces have these shapes:

    write-answer             generation  x 7

    answer-request           chain       x 185
      write-answer           generation

    answer-request           chain       x 107
      answer-from-cache      span

    answer-request           chain       x 8
      classify-question      generation

    answer-within-budget     chain       x 4
      check-budget           guardrail
      write-answer           generation

    answer-within-budget     chain
      check-budget           guardrail

Try next: set USER_LIMIT to Decimal("0.0003"), and predict which questions are refused.
"""

import asyncio
import csv
import json
import os
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import openai
from langfuse import Langfuse, get_client, observe, propagate_attributes
from langfuse.api import ObservationV2
from langfuse.openai import AsyncOpenAI, OpenAI

from common import console
from common.client import connect, tracing_is_on
from common.console import show_answer, show_line, show_result, show_section, show_table
from common.pricing import cost_by_bucket, cost_of, price_of, unpriced_buckets, usage_buckets
from common.readback import poll
from common.retriever import handbook, search
from common.settings import TOP, read_settings
from common.tokens import count_message_tokens

QUESTION = "Can I return shoes after 20 days?"
COMPARED_MODELS = ["gpt-6-luna", "gpt-5.4-mini", "gpt-6.1-terra", "gpt-6-sol"]
TRAFFIC = 300  # requests of the simulated day
USER_LIMIT = Decimal("0.00034")  # USD a user may spend in a day
MAX_TOKENS = 500  # of an answer, what the model thinks included
SORRY = "Sorry, I cannot answer at the moment."
OWN_MODEL = "shop-topics"  # our own, traced by hand; Langfuse has no price for it
MISSING_MODEL = "gpt-6-lunna"  # a typing error in the configuration of one feature
COMMON_QUESTIONS = (
    "What does express delivery cost?",
    "How long is the warranty?",
    "Can I pay by invoice?",
    "Are your shoes small?",
)
TEAMS = {"support": ("chat", "mail"), "sales": ("chat", "offers"), "logistics": ("tracking",)}
USERS = ("ada", "bob", "cyd", "dan", "eve", "fay", None)  # None: a job that runs at night
Messages = list[dict[str, Any]]
Usage = dict[str, Any]
Rows = list[dict[str, Any]]


# %% 1. Count tokens before the call, and read them after it
#
# The count before is what a budget can act on; the usage after is what is billed. They
# differ where the provider adds to the prompt, such as tools and a chat format of its own.


@dataclass
class Ledger:
    """What the calls have cost by their own report: USD by model, and calls without a price."""

    usd: defaultdict[str, Decimal] = field(default_factory=lambda: defaultdict(Decimal))
    unpriced: Counter[str] = field(default_factory=Counter)
    calls: int = 0

    def add(self, model: str, usage: Usage) -> Decimal | None:
        """Enter one call and return its cost in USD, None where the price is unknown."""
        cost = cost_of(model, usage)
        self.calls += 1
        if cost is None:
            self.unpriced[model] += 1
        else:
            self.usd[model] += cost
        return cost


def messages_about(question: str, passages: list[str]) -> Messages:
    """Return the chat that asks for an answer from these passages."""
    system = "Answer in one sentence, only from these passages:\n" + "\n".join(passages)
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


def ask(
    client: OpenAI, ledger: Ledger, model: str, messages: Messages
) -> tuple[str, str, Usage, Decimal | None]:
    """Return the answer, the model's dated name, its usage in tokens, and the cost in USD.

    In Langfuse: select `write-answer`; the same numbers stand under usage.
    """
    response = client.chat.completions.create(
        name="write-answer", model=model, messages=messages, max_completion_tokens=MAX_TOKENS
    )
    usage = response.usage.model_dump() if response.usage else {}
    cost = ledger.add(response.model, usage)
    return response.choices[0].message.content or "", response.model, usage, cost


# %% 2. Turn usage into dollars, bucket by bucket
#
# Cached input is cheaper than input, and tokens a model thinks with are billed as output
# though nobody reads them. Buckets must not overlap, or a token is paid twice. A model
# without a price costs an unknown amount, which is not nothing.


def cost_table(model: str, usage: Usage) -> list[tuple[str, int, str]]:
    """Return bucket, tokens and cost in USD of one call, the total last.

    In Langfuse: the cost of a generation opens into the same rows. A bucket without a
    price is missing there, and costs nothing as far as Langfuse knows.
    """
    costs = cost_by_bucket(model, usage)
    buckets = {name: count for name, count in usage_buckets(usage).items() if count}
    if costs is None:
        return [("total", buckets.get("total", 0), "unknown")]
    rows = [(name, buckets[name], f"{costs[name]:.7f}") for name in costs if name in buckets]
    rows += [(name, buckets[name], "no price") for name in unpriced_buckets(model, usage)]
    return sorted(rows, key=lambda row: row[0] == "total")


# %% 3. Ask the same of several models
#
# A price list compares models per token. What you pay is per answer, and a model that
# thinks first or answers at length can cost more than its price suggests.


def compare_models(
    client: OpenAI, ledger: Ledger, models: list[str], messages: Messages
) -> Iterator[tuple[str, int, int, str]]:
    """Yield model, tokens in and out, and USD per 1,000 answers; one not offered is left out.

    In Langfuse: filter generations by name, group by model, and compare cost and latency.
    """
    for model in models:
        try:
            _, answered, usage, cost = ask(client, ledger, model, messages)
        except openai.NotFoundError:
            ledger.calls += 1
            continue
        tokens_in, tokens_out = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
        price = "unknown" if cost is None else f"{1000 * cost:.4f}"
        yield answered, tokens_in, tokens_out, price


# %% 4. Send a day of traffic, and keep a ledger of it
#
# Team and feature are tags, the user is the user. An answer that comes from a cache is a
# span, not a generation: it has no tokens, and says what it saved. The ledger adds up
# what the responses report, in Decimal, to be compared with what Langfuse has stored.


@dataclass(frozen=True)
class Request:
    """One question of the day, the model it is meant for, and on whose behalf it is asked."""

    question: str
    model: str
    team: str
    feature: str
    user: str | None


def plan_traffic(count: int, model: str, seed: int = 4) -> list[Request]:
    """Return a day's requests: some are common and repeat, one in twenty is for OWN_MODEL."""
    dice = random.Random(seed)  # noqa: S311  a simulation, not a secret
    day = []
    for number in range(count):
        team = dice.choice(sorted(TEAMS))
        feature = dice.choice(TEAMS[team])
        fresh = f"When will order A-{1000 + number} be delivered?"
        question = dice.choice(COMMON_QUESTIONS) if dice.random() < 0.4 else fresh
        asked = OWN_MODEL if dice.random() < 0.05 else model
        if feature == "offers" and dice.random() < 0.2:
            asked = MISSING_MODEL
        day.append(Request(question, asked, team, feature, dice.choice(USERS)))
    return day


Answer = tuple[str, Decimal | None]
Cache = dict[tuple[str, str], asyncio.Task[Answer]]


async def write_answer(client: AsyncOpenAI, ledger: Ledger, request: Request) -> Answer:
    """Ask the model, enter the call in the ledger, and return answer and cost in USD."""
    passages = [passage.text for passage in search(request.question)]
    try:
        response = await client.chat.completions.create(
            name="write-answer",
            model=request.model,
            messages=messages_about(request.question, passages),
            max_completion_tokens=MAX_TOKENS,
        )
    except openai.OpenAIError:
        ledger.calls += 1
        raise
    usage = response.usage.model_dump() if response.usage else {}
    return response.choices[0].message.content or "", ledger.add(response.model, usage)


@observe(name="classify-question", as_type="generation", capture_input=False)
async def classify_question(ledger: Ledger, request: Request) -> Answer:
    """Sort a question with a model that has no price: usage is known, cost is not.

    In Langfuse: the generation has tokens and no cost. It is missing from every sum, and
    only a count of calls without a cost shows that.
    """
    usage = {"input": len(request.question.split()), "output": 1}
    topic = "tracking" if "order" in request.question else "other"
    get_client().update_current_generation(
        model=request.model, input=request.question, output=topic, usage_details=usage
    )
    return topic, ledger.add(request.model, usage)


@observe(name="answer-request", as_type="chain", capture_input=False)
async def answer_request(
    client: AsyncOpenAI, ledger: Ledger, cache: Cache, request: Request
) -> str:
    """Answer from the cache, or ask the model and remember the answer.

    In Langfuse: filter observations by name `answer-from-cache` to see what was saved;
    the metadata of each says how much.
    """
    langfuse = get_client()
    langfuse.update_current_span(input=request.question)
    key = request.model, request.question
    is_new = key not in cache
    if is_new:
        own = request.model == OWN_MODEL
        call = classify_question(ledger, request) if own else write_answer(client, ledger, request)
        cache[key] = asyncio.create_task(call)
        cache[key].add_done_callback(partial(forget_failure, cache, key))
    try:
        # Shielded: one user who leaves must not take the answer from the others who wait.
        answer, cost = await asyncio.shield(cache[key])
    except openai.OpenAIError:
        return SORRY
    if not is_new:
        saved = {"cached": True, "saved_usd": "unknown" if cost is None else str(cost)}
        langfuse.start_observation(
            name="answer-from-cache", input=request.question, output=answer, metadata=saved
        ).end()
    return answer


def forget_failure(cache: Cache, key: tuple[str, str], task: asyncio.Task[Answer]) -> None:
    """Take a call that failed out of the cache: a failure is not an answer."""
    if task.cancelled() or task.exception():
        cache.pop(key, None)


async def send_traffic(
    day: list[Request], run: str, ledger: Ledger, done: Callable[[], None]
) -> None:
    """Answer a day's requests, twenty at a time, each on behalf of its user and team.

    In Langfuse: the tags `team:…` and `feature:…` are filters, and dimensions of every
    chart; `run` in the metadata tells this run from the others.
    """
    cache: Cache = {}
    twenty = asyncio.Semaphore(20)
    async with AsyncOpenAI(timeout=60) as client:

        async def answer(request: Request) -> None:
            async with twenty:
                with propagate_attributes(
                    user_id=request.user,
                    tags=[f"team:{request.team}", f"feature:{request.feature}"],
                    metadata={"run": run},
                ):
                    await answer_request(client, ledger, cache, request)
            done()

        await asyncio.gather(*(answer(request) for request in day))


# %% 5. Stop before the money is spent
#
# A report tells of yesterday. A budget asks before the call: what may this answer cost at
# worst? That much is reserved, and what it did not cost is given back. Reserving is what
# makes it safe when many calls of one user run at once.


class BudgetExceededError(RuntimeError):
    """A user has spent what the budget allows for now."""


@dataclass
class Reservation:
    """What one call may cost, or has cost, in USD; `at` is the budget's clock in seconds."""

    at: float
    usd: Decimal


class Budget:
    """A limit in USD per user over a rolling window; safe under threads and asyncio.

    It lives in this process: several servers need one that is kept in a database. `alert`
    is called once a window, when what a user has spent and reserved reaches 80 % of the
    limit; it must not raise.
    """

    def __init__(
        self,
        limit: Decimal,
        window: timedelta,
        alert: Callable[[str, Decimal], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit, self.window, self.alert, self.clock = limit, window, alert, clock
        self._taken: defaultdict[str, list[Reservation]] = defaultdict(list)
        self._alerted_at: dict[str, float] = {}
        self._lock = threading.Lock()

    def reserve(self, user: str, worst_case: Decimal) -> Reservation:
        """Set the worst case aside and return what to settle; raise when it is too much."""
        with self._lock:
            now = self.clock()
            oldest = now - self.window.total_seconds()
            self._taken[user] = [each for each in self._taken[user] if each.at > oldest]
            taken = sum((each.usd for each in self._taken[user]), start=Decimal(0))
            if taken + worst_case > self.limit:
                raise BudgetExceededError(
                    f"{user} has spent ${taken:.6f} of ${self.limit}, "
                    f"and this answer may cost ${worst_case:.6f}"
                )
            reserved = Reservation(now, worst_case)
            self._taken[user].append(reserved)
            share = (taken + worst_case) / self.limit
            must_alert = share >= Decimal("0.8") and self._alerted_at.get(user, oldest) <= oldest
            if must_alert:
                self._alerted_at[user] = now
        if must_alert:
            self.alert(user, share)
        return reserved

    def settle(self, reserved: Reservation, cost: Decimal) -> None:
        """Replace what was reserved by what the call has cost in USD."""
        with self._lock:
            reserved.usd = cost


def worst_case(model: str, messages: Messages, max_tokens: int) -> Decimal:
    """Return the most that a call can cost in USD: its prompt, and the longest answer.

    Raises ValueError for a model without a price: a budget cannot hold what it cannot
    count. An estimated count of tokens gets a third on top.
    """
    count = count_message_tokens(messages, model)
    price = price_of(model)
    if price is None:
        raise ValueError(f"{model} has no price: add it to PRICES in common/pricing.py")
    tokens = count.tokens if count.exact else count.tokens * 4 // 3
    usd = price.per_token(tokens)
    # The whole prompt may be written to a cache, which costs more than to read it.
    dearest = max(usd["input"], usd.get("input_cache_write_tokens", usd["input"]))
    return tokens * dearest + max_tokens * usd["output"]


@observe(name="check-budget", as_type="guardrail", capture_input=False, capture_output=False)
def check_budget(budget: Budget, user: str, usd: Decimal) -> Reservation:
    """Reserve the worst case; a refusal leaves this step as an ERROR with its reason.

    In Langfuse: filter by name `check-budget` and level ERROR to see who was stopped. A
    guardrail is a step that may forbid the ones after it.
    """
    langfuse = get_client()
    langfuse.update_current_span(input={"user": user, "worst_case_usd": str(usd)})
    reserved = budget.reserve(user, usd)
    langfuse.update_current_span(output="within the budget")
    return reserved


@observe(name="answer-within-budget", as_type="chain", capture_input=False)
def answer_within_budget(
    client: OpenAI, ledger: Ledger, budget: Budget, user: str, question: str
) -> str:
    """Answer if the user's budget allows it, else say why not; nothing is spent then."""
    get_client().update_current_span(input=question)
    messages = messages_about(question, [passage.text for passage in search(question)])
    try:
        reserved = check_budget(
            budget, user, worst_case(os.environ["OPENAI_MODEL"], messages, MAX_TOKENS)
        )
    except BudgetExceededError as error:
        return f"Refused: {error}."
    # Where this fails the worst case stays reserved: the provider may have billed it.
    answer, _, _, cost = ask(client, ledger, os.environ["OPENAI_MODEL"], messages)
    if cost is not None:
        budget.settle(reserved, cost)
    return answer


def spend_a_budget(
    client: OpenAI, ledger: Ledger, user: str, alert: Callable[[str, Decimal], None]
) -> Iterator[tuple[str, str]]:
    """Ask until the budget refuses, and once more a day later; yield questions and answers."""
    seconds = [0.0]  # a clock that can be put forward
    budget = Budget(USER_LIMIT, timedelta(days=1), alert, clock=lambda: seconds[0])
    with propagate_attributes(user_id=user):
        for question in COMMON_QUESTIONS:
            yield question, answer_within_budget(client, ledger, budget, user, question)
        seconds[0] += 24 * 3600
        answer = answer_within_budget(client, ledger, budget, user, QUESTION)
        yield f"{QUESTION} (asked a day later)", answer


def warn(user: str, share: Decimal) -> None:
    """Print a budget's alert; in production this posts to a chat or a pager."""
    show_line(f"  Alert: {user} has up to {share:.0%} of the budget spent or reserved", "yellow")


# %% 6. Let Langfuse add it up
#
# The Metrics API sums where the data lies: no paging through a million calls. Averages
# hide the slow tail, so ask for the 95th percentile. A sum leaves out what has no price,
# so count that, too.

IN_RUN = {"type": "stringObject", "column": "metadata", "key": "run", "operator": "="}


def ask_metrics(langfuse: Langfuse, run: str, *measures: str, by: str = "", **more: Any) -> Rows:
    """Return one row a value of the dimension `by`, over the generations of this run.

    A measure is written as its column is named: `ask_metrics(…, "sum_totalCost")`.

    In Langfuse: the same query builds a chart under Dashboards. Of users and traces, which
    are many, the API gives only the first hundred, sorted by the first measure.
    """
    now = datetime.now(UTC)
    pairs = [measure.split("_") for measure in measures]
    query = {
        "view": "observations",
        "metrics": [{"measure": what, "aggregation": how} for how, what in pairs],
        "dimensions": [{"field": by}] if by else [],
        "orderBy": [{"field": measures[0], "direction": "desc"}] if by else [],
        "config": {"row_limit": 100},
        "filters": [
            {"type": "string", "column": "type", "operator": "=", "value": "GENERATION"},
            {**IN_RUN, "value": run},
        ],
        "fromTimestamp": (now - timedelta(days=7)).isoformat(),
        "toTimestamp": (now + timedelta(minutes=1)).isoformat(),
        **more,
    }
    rows: Rows = langfuse.api.metrics.metrics(query=json.dumps(query)).data
    return rows


def usd_of(row: dict[str, Any]) -> Decimal:
    """Return the summed cost of a row in USD, rounded to a billionth."""
    return round(Decimal(str(row["sum_totalCost"] or 0)), 9)


def by_label(rows: Rows, column: str, prefix: str = "") -> dict[str, Decimal]:
    """Add up USD by the value of a column, or by its tag with this prefix; else `unknown`.

    `by_label([{"tags": ["team:a"], "sum_totalCost": 1}], "tags", "team:") -> {"a": 1}`
    """
    usd: defaultdict[str, Decimal] = defaultdict(Decimal)
    for row in rows:
        values = row[column] if isinstance(row[column], list) else [row[column]]
        names = [value.removeprefix(prefix) for value in values if value and prefix in value]
        usd[names[0] if names else "unknown"] += usd_of(row)
    return {name: amount for name, amount in usd.items() if amount}


def observations_of_run(langfuse: Langfuse, run: str, **wanted: Any) -> Iterator[ObservationV2]:
    """Yield all observations of a run, page by page until there is no cursor left.

    In Langfuse: the table of observations with a filter on the metadata key `run`.
    """
    cursor = None
    while True:
        page = langfuse.api.observations.get_many(
            filter=json.dumps([{**IN_RUN, "value": run}]),
            fields="core,basic,metadata,model,usage",
            limit=500,
            cursor=cursor,
            **wanted,
        )
        yield from page.data
        cursor = page.meta.cursor
        if cursor is None:
            return


def calls_without_cost(generations: Iterable[ObservationV2]) -> Counter[str]:
    """Return how many answered calls have no stored cost, by model: no sum contains them."""
    answered = (node for node in generations if node.level != "ERROR")
    return Counter(
        node.model or "no model" for node in answered if "total" not in (node.cost_details or {})
    )


def saved_by_cache(cached: Iterable[ObservationV2]) -> tuple[int, Decimal]:
    """Return how many answers came from the cache, and what their first calls had cost in USD."""
    saved = [(node.metadata or {}).get("saved_usd", "unknown") for node in cached]
    return len(saved), sum((Decimal(usd) for usd in saved if usd != "unknown"), start=Decimal(0))


# %% 7. Hold the sum against an account of your own
#
# A report is only worth its numbers when they agree with one that was kept independently.

AGREE_WITHIN = Decimal("0.000000001")  # USD: a server rounds its sums


def differences(ledger: Ledger, stored: dict[str, Decimal]) -> list[tuple[str, Decimal, Decimal]]:
    """Return each model whose stored cost is not the ledger's: model, ours, theirs, in USD."""
    none = Decimal(0)
    models = dict.fromkeys([*ledger.usd, *stored])
    rows = [(model, ledger.usd.get(model, none), stored.get(model, none)) for model in models]
    rows.append(("total", sum(ledger.usd.values(), none), sum(stored.values(), none)))
    return [row for row in rows if abs(row[1] - row[2]) > AGREE_WITHIN]


# %% 8. Hand the report to a spreadsheet
#
# Names come from traces, and a spreadsheet runs a cell that begins with "=" as a formula.


def write_csv(path: Path, rows: Iterable[tuple[str, str, object]]) -> None:
    """Write kind, name and USD to a CSV file; a name like a formula gets a quote before it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        for kind, name, usd in rows:
            safe = f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name
            csv.writer(file).writerow([kind, safe, usd])


def show_bars(values: dict[str, Decimal]) -> None:
    """Draw amounts in USD as bars, the longest 40 characters wide."""
    most = max(values.values(), default=Decimal(0))
    show_line("")
    width = max(map(len, values), default=0)
    for label, usd in values.items():
        bar = "█" * round(40 * usd / most) if most else ""
        show_line(f"  {label:<{width}}  {console.usd_text(usd)} {bar}")


def show_report(langfuse: Langfuse, run: str, ledger: Ledger) -> None:
    """Print what Langfuse adds up, hold it against the ledger, and write it to a file."""
    show_section("6. Let Langfuse add it up: USD by model, team, user and day")
    with console.waiting("Waiting until every call is stored"):
        [stored] = poll(
            lambda: ask_metrics(langfuse, run, "count_count"),
            until=lambda rows: int(rows[0]["count_count"]) >= ledger.calls,
        )
    if int(stored["count_count"]) < ledger.calls:
        console.fail(f"Only {stored['count_count']} of {ledger.calls} calls are stored.", 1)
    models = by_label(
        ask_metrics(langfuse, run, "sum_totalCost", by="providedModelName"), "providedModelName"
    )
    teams = by_label(ask_metrics(langfuse, run, "sum_totalCost", by="tags"), "tags", "team:")
    users = by_label(ask_metrics(langfuse, run, "sum_totalCost", by="userId"), "userId")
    per_day: dict[str, Any] = {"timeDimension": {"granularity": "day"}}
    days = by_label(ask_metrics(langfuse, run, "sum_totalCost", **per_day), "time_dimension")
    for bars in (models, teams, users, days):
        show_bars(bars)
    show_line("")
    unpriced = calls_without_cost(observations_of_run(langfuse, run, type="GENERATION"))
    for model, calls in unpriced.items():
        show_result("cost unknown", f"{calls} calls of {model}, in none of these sums")
    levels = ask_metrics(langfuse, run, "count_count", "p95_latency", by="level")
    errors = sum(int(row["count_count"]) for row in levels if row["level"] == "ERROR")
    show_result("errors", f"{errors} of {ledger.calls} calls ({errors / ledger.calls:.1%})")
    for row in levels:
        show_result(f"p95 {row['level']}", f"{row['p95_latency']:.0f} ms")
    hits, saved = saved_by_cache(observations_of_run(langfuse, run, name="answer-from-cache"))
    show_result("from the cache", f"{hits} of {TRAFFIC} ({hits / TRAFFIC:.0%}), saved ${saved:.6f}")

    show_section("7. Hold the sum against an account of your own")
    wrong = differences(ledger, models)
    for model, ours, theirs in wrong:
        show_line(f"  {model}: the ledger has ${ours:.9f}, Langfuse ${theirs:.9f}", "red")
    if wrong:
        console.fail("The report and the ledger do not agree.", 1)
    total = sum(ledger.usd.values())
    agreed = f"Langfuse and the ledger agree on ${total:.9f}" if total else "no call has a price"
    show_result("reconciled", agreed)

    show_section("8. Hand the report to a spreadsheet")
    path = (TOP / read_settings()["LOCAL_LANGFUSE_DB"].value).with_name("cost.csv")
    kinds = {"model": models, "team": teams, "user": users, "day": days}
    rows = [(kind, name, usd) for kind, part in kinds.items() for name, usd in part.items()]
    write_csv(path, [("kind", "name", "USD"), *rows, *(("model", name, "") for name in unpriced)])
    show_result("written", path)

    for title, measure in (("slowest", "max_latency"), ("most expensive", "sum_totalCost")):
        first = ask_metrics(langfuse, run, measure, by="traceId")[0]
        show_section(f"The {title} trace")
        console.show_trace(first["traceId"])


def main() -> None:
    """Everything that spends first; then the report, read back and held against the ledger."""
    connect()
    langfuse = Langfuse()
    client, ledger, run = OpenAI(timeout=60), Ledger(), langfuse.create_trace_id()[:8]
    short, long = (messages_about(QUESTION, handbook() * times) for times in (1, 5))
    with propagate_attributes(metadata={"run": run}):
        show_section("1. Count tokens before the call, and read them after it")
        show_result("before", count_message_tokens(short, os.environ["OPENAI_MODEL"]))
        _, answered, usage, _ = ask(client, ledger, os.environ["OPENAI_MODEL"], short)
        show_result("after", f"{usage.get('prompt_tokens', 'unknown')} tokens")

        show_section("2. Turn usage into dollars, bucket by bucket")
        for turn in ("first", "second"):  # the first writes to the cache, the second reads from it
            _, answered, usage, _ = ask(client, ledger, os.environ["OPENAI_MODEL"], long)
            show_table((f"{answered}, {turn} time", "tokens", "USD"), cost_table(answered, usage))
        show_table((OWN_MODEL, "tokens", "USD"), cost_table(OWN_MODEL, {"input": 7, "output": 1}))

        show_section("3. Ask the same of several models")
        compared = list(compare_models(client, ledger, COMPARED_MODELS, short))
        show_table(("model", "tokens in", "out", "USD per 1,000 answers"), compared)

        show_section("4. Send a day of traffic, and keep a ledger of it")
        day, before = plan_traffic(TRAFFIC, os.environ["OPENAI_MODEL"]), ledger.calls
        with console.progress("Answering", len(day)) as done:
            asyncio.run(send_traffic(day, run, ledger, done))
        show_result("requests", len(day))
        called = ledger.calls - before
        show_result("asked a model", f"{called}; the other answers came from the cache")
        for model, calls in ledger.unpriced.items():
            show_result("without a price", f"{calls} calls of {model}")

        show_section("5. Stop before the money is spent")
        model = os.environ["OPENAI_MODEL"]
        if price_of(model) is None:
            show_line(f"  {model} has no price: a budget cannot hold what it cannot count.")
        else:
            for question, answer in spend_a_budget(client, ledger, "gus", warn):
                show_answer(question, answer)
    langfuse.flush()  # hand over what is waiting before anyone adds it up
    if not tracing_is_on() or float(read_settings()["LANGFUSE_SAMPLE_RATE"].value) < 1:
        show_line("  No report: tracing is off, or LANGFUSE_SAMPLE_RATE leaves traces out.")
    else:
        show_report(langfuse, run, ledger)


if __name__ == "__main__":
    main()
