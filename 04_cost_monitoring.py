"""Know what every answer costs, before and after.

The bill comes once a month and names nobody. Count tokens before a call and read usage
after it, give every call a user, a team and a feature, and each dollar has an owner the
moment it is spent, and a limit before that.

Run it:

    python 04_cost_monitoring.py

The traces have these shapes:

    write-answer             generation  x 7

    answer-request           chain       x 180
      write-answer           generation

    answer-request           chain       x 106
      answer-from-cache      span

    answer-request           chain       x 14
      classify-question      generation

    answer-within-budget     chain       x 4
      check-budget           guardrail
      write-answer           generation

    answer-within-budget     chain
      check-budget           guardrail

Try next: double USER_LIMIT, and predict which of the questions is refused then.
"""

import asyncio
import csv
import json
import random
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
from langfuse import Langfuse, get_client, observe, propagate_attributes
from langfuse.api import ObservationV2
from langfuse.openai import AsyncOpenAI, OpenAI

from common.client import connect, tracing_is_on
from common.console import (
    fail,
    progress,
    show_answer,
    show_bars,
    show_line,
    show_result,
    show_section,
    show_table,
    show_trace,
    waiting,
)
from common.llm import async_openai_client, model_name, openai_client
from common.pricing import cost_by_bucket, cost_of, price_of, usage_buckets
from common.readback import poll
from common.retriever import handbook, search
from common.settings import TOP, read_settings
from common.tokens import count_message_tokens

QUESTION = "Can I return shoes after 20 days?"
COMPARED_MODELS = ["gpt-4.1-nano", "gpt-4o-mini", "gpt-4o", "gpt-5-mini"]
TRAFFIC = 300  # requests of the simulated day
USER_LIMIT = Decimal("0.00012")  # USD a user may spend in a day
MAX_TOKENS = 100
Messages = list[dict[str, Any]]
Rows = list[dict[str, Any]]


# %% 1. Count tokens before the call, and read them after it
#
# The count before is what a budget can act on; the usage after is what is billed. They
# differ where the provider adds to the prompt, such as tools and a chat format of its own.


def messages_about(question: str, passages: list[str]) -> Messages:
    """Return the chat that asks for an answer from these passages."""
    system = "Answer in one sentence, only from these passages:\n" + "\n".join(passages)
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


def ask(
    client: OpenAI, model: str, messages: Messages, trace_id: str
) -> tuple[str, dict[str, Any]]:
    """Return the model's dated name, and the usage it reports, in tokens.

    In Langfuse: select `write-answer`; the same numbers stand under usage.
    """
    response = client.chat.completions.create(
        name="write-answer",
        model=model,
        messages=messages,
        max_completion_tokens=MAX_TOKENS,
        trace_id=trace_id,
    )
    return response.model, response.usage.model_dump() if response.usage else {}


# %% 2. Turn usage into dollars, bucket by bucket
#
# Cached input is cheaper than input, and tokens a model thinks with are billed as output
# though nobody reads them. Buckets must not overlap, or a token is paid twice. A model
# without a price costs an unknown amount, which is not nothing.


def cost_table(model: str, usage: dict[str, Any]) -> list[tuple[str, int, str]]:
    """Return bucket, tokens and cost in USD of one call, the total last.

    In Langfuse: hover over the cost of a generation for the same table.
    """
    costs = cost_by_bucket(model, usage)
    if costs is None:
        return [("total", usage_buckets(usage).get("total", 0), "unknown")]
    buckets = {name: count for name, count in usage_buckets(usage).items() if count}
    rows = [(name, buckets[name], f"{costs[name]:.7f}") for name in costs if name in buckets]
    return sorted(rows, key=lambda row: row[0] == "total")


# %% 3. Ask the same of several models
#
# A price list compares models per token. What you pay is per answer, and a model that
# thinks first or answers at length can cost more than its price suggests.


def compare_models(
    client: OpenAI, models: list[str], messages: Messages, trace_ids: list[str]
) -> Iterable[tuple[str, dict[str, Any], Decimal | None]]:
    """Yield each model's name, usage and cost in USD; models that are not offered are left out.

    In Langfuse: filter generations by name, group by model, and compare cost and latency.
    """
    for model, trace_id in zip(models, trace_ids, strict=True):
        try:
            answered, usage = ask(client, model, messages, trace_id)
        except openai.NotFoundError:
            continue
        yield answered, usage, cost_of(answered, usage)


# %% 4. Send a day of traffic, and keep a ledger of it
#
# Team and feature are tags, the user is the user. An answer that comes from a cache is a
# span, not a generation: it has no tokens, and says what it saved. The ledger adds up
# what the responses report, in Decimal, to be compared with what Langfuse has stored.


@dataclass(frozen=True)
class Request:
    """One question of the simulated day, and on whose behalf it is asked."""

    question: str
    model: str
    team: str
    feature: str
    user: str | None


@dataclass
class Ledger:
    """What the calls have cost by their own account: USD by model, and calls without a price."""

    usd: defaultdict[str, Decimal] = field(default_factory=lambda: defaultdict(Decimal))
    unpriced: Counter[str] = field(default_factory=Counter)
    calls: int = 0

    def add(self, model: str, usage: dict[str, Any]) -> Decimal:
        """Enter one call and return its cost in USD, 0 where the price is unknown."""
        cost = cost_of(model, usage)
        self.calls += 1
        if cost is None:
            self.unpriced[model] += 1
        else:
            self.usd[model] += cost
        return cost or Decimal(0)


COMMON_QUESTIONS = [
    "What does express delivery cost?",
    "How long is the warranty?",
    "Can I pay by invoice?",
    "Are your shoes small?",
]
TEAMS = {"support": ["chat", "mail"], "sales": ["chat", "offers"], "logistics": ["tracking"]}
USERS = ["ada", "bob", "cyd", "dan", "eve", "fay", None]  # None: a job that runs at night
OWN_MODEL = "shop-topics"  # our own, traced by hand; Langfuse has no price for it
MISSING_MODEL = "gpt-4o-minni"  # a typing error in the configuration of one feature


def plan_traffic(count: int, model: str, seed: int = 4) -> list[Request]:
    """Return a day's requests; the same seed gives the same day."""
    dice = random.Random(seed)  # noqa: S311  a simulation, not a secret
    day = []
    for number in range(count):
        team = dice.choice(sorted(TEAMS))
        feature = dice.choice(TEAMS[team])
        fresh = f"When will order A-{1000 + number} be delivered?"
        question = dice.choice(COMMON_QUESTIONS) if dice.random() < 0.4 else fresh
        asked = dice.choices([model, OWN_MODEL], weights=[19, 1])[0]
        if feature == "offers" and dice.random() < 0.2:
            asked = MISSING_MODEL
        day.append(Request(question, asked, team, feature, dice.choice(USERS)))
    return day


async def write_answer(
    client: AsyncOpenAI, request: Request, ledger: Ledger
) -> tuple[str, Decimal]:
    """Ask the model, enter the call in the ledger, and return answer and cost in USD."""
    passages = [passage.text for passage in search(request.question)]
    response = await client.chat.completions.create(
        name="write-answer",
        model=request.model,
        messages=messages_about(request.question, passages),
        max_completion_tokens=MAX_TOKENS,
    )
    usage = response.usage.model_dump() if response.usage else {}
    return response.choices[0].message.content or "", ledger.add(response.model, usage)


@observe(name="classify-question", as_type="generation", capture_input=False)
async def classify_question(question: str, ledger: Ledger) -> tuple[str, Decimal]:
    """Sort a question with a model that has no price: usage is known, cost is not.

    In Langfuse: the generation has tokens and no cost. It is missing from every sum, and
    only a count of calls without a cost shows that.
    """
    usage = {"input": len(question.split()), "output": 1}
    topic = "tracking" if "order" in question else "other"
    get_client().update_current_generation(model=OWN_MODEL, input=question, usage_details=usage)
    return topic, ledger.add(OWN_MODEL, usage)


Cache = dict[tuple[str, str], asyncio.Task[tuple[str, Decimal]]]


@observe(name="answer-request", as_type="chain", capture_input=False)
async def answer_request(
    client: AsyncOpenAI, request: Request, cache: Cache, ledger: Ledger
) -> str:
    """Answer from the cache, or ask the model and remember the answer.

    In Langfuse: filter observations by name `answer-from-cache` to see what was saved;
    the metadata of each says how much.
    """
    langfuse = get_client()
    langfuse.update_current_span(input=request.question)
    key = request.model, request.question
    if key in cache:
        with langfuse.start_as_current_observation(
            name="answer-from-cache", input=request.question
        ) as span:
            answer, saved = await cache[key]  # asked but not yet answered counts, too
            span.update(output=answer, metadata={"cached": True, "saved_usd": str(saved)})
        return answer
    own = request.model == OWN_MODEL
    call = (
        classify_question(request.question, ledger)
        if own
        else write_answer(client, request, ledger)
    )
    cache[key] = asyncio.create_task(call)
    try:
        return (await cache[key])[0]
    except openai.NotFoundError:
        del cache[key]  # a failure is not an answer
        return "Sorry, I cannot answer at the moment."


async def send_traffic(
    day: list[Request], run: str, ledger: Ledger, done: Callable[[], None]
) -> None:
    """Answer a day's requests, twenty at a time, each on behalf of its user and team.

    In Langfuse: the tags `team:…` and `feature:…` are filters, and dimensions of every
    chart; `run` in the metadata tells this run from the others.
    """
    cache: Cache = {}
    lanes = asyncio.Semaphore(20)
    async with async_openai_client() as client:

        async def answer(request: Request) -> None:
            async with lanes:
                with propagate_attributes(
                    user_id=request.user,
                    tags=[f"team:{request.team}", f"feature:{request.feature}"],
                    metadata={"run": run},
                ):
                    await answer_request(client, request, cache, ledger)
            done()

        await asyncio.gather(*(answer(request) for request in day))


# %% 5. Stop before the money is spent
#
# A report tells of yesterday. A budget asks before the call: what may this answer cost at
# worst? That much is reserved, and what it did not cost is given back. Reserving is what
# makes it safe when many calls of one user run at once.


class BudgetExceededError(RuntimeError):
    """A user has spent what the budget allows for now."""


class Budget:
    """A limit in USD per user over a rolling window; safe under threads and asyncio.

    `alert` is called once when a user passes 80 % of the limit, and again only after the
    user has been below it.
    """

    def __init__(
        self,
        limit: Decimal,
        window: timedelta,
        alert: Callable[[str, Decimal], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit, self.alert, self.clock = limit, alert, clock
        self._seconds = window.total_seconds()
        self._entries: defaultdict[str, deque[list[Any]]] = defaultdict(deque)
        self._alerted: set[str] = set()
        self._lock = threading.Lock()

    def reserve(self, user: str, worst_case: Decimal) -> list[Any]:
        """Set the worst case aside and return the entry to settle; raise when it is too much."""
        with self._lock:
            now, entries = self.clock(), self._entries[user]
            while entries and entries[0][0] <= now - self._seconds:
                entries.popleft()
            taken = sum((usd for _, usd in entries), start=worst_case)
            if taken > self.limit:
                raise BudgetExceededError(
                    f"{user} would pass the limit of ${self.limit} (with ${taken:f}); "
                    f"the oldest of it expires in {self._wait(entries, now):,.0f} s"
                )
            entry = [now, worst_case]
            entries.append(entry)
            near = taken >= self.limit * Decimal("0.8")
            must_alert = near and user not in self._alerted
            (self._alerted.add if near else self._alerted.discard)(user)
        if must_alert:
            self.alert(user, taken / self.limit)
        return entry

    def settle(self, entry: list[Any], cost: Decimal) -> None:
        """Replace what was reserved by what the call has cost in USD; 0 if it failed."""
        with self._lock:
            entry[1] = cost

    def _wait(self, entries: deque[list[Any]], now: float) -> float:
        return max(0.0, entries[0][0] + self._seconds - now) if entries else self._seconds


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
    per_token = price.per_token()
    return tokens * per_token["input"] + max_tokens * per_token["output"]


@observe(name="check-budget", as_type="guardrail", capture_input=False, capture_output=False)
def check_budget(budget: Budget, user: str, usd: Decimal) -> list[Any]:
    """Reserve the worst case; a refusal leaves this step as an ERROR with its reason.

    In Langfuse: filter by name `check-budget` and level ERROR to see who was stopped.
    """
    langfuse = get_client()
    langfuse.update_current_span(input={"user": user, "worst_case_usd": str(usd)})
    entry = budget.reserve(user, usd)
    langfuse.update_current_span(output="within the budget")
    return entry


@observe(name="answer-within-budget", as_type="chain", capture_input=False)
def answer_within_budget(client: OpenAI, budget: Budget, user: str, question: str) -> str:
    """Answer if the user's budget allows it, else say why not; nothing is spent then."""
    get_client().update_current_span(input=question)
    messages = messages_about(question, [passage.text for passage in search(question)])
    try:
        entry = check_budget(budget, user, worst_case(model_name(), messages, MAX_TOKENS))
    except BudgetExceededError as error:
        return f"Refused: {error}."
    cost = Decimal(0)
    try:
        response = client.chat.completions.create(
            name="write-answer",
            model=model_name(),
            messages=messages,
            max_completion_tokens=MAX_TOKENS,
        )
        usage = response.usage.model_dump() if response.usage else {}
        cost = cost_of(response.model, usage) or cost
    finally:
        budget.settle(entry, cost)
    return response.choices[0].message.content or ""


def spend_a_budget(client: OpenAI, alert: Callable[[str, Decimal], None]) -> list[tuple[str, str]]:
    """Ask until the budget refuses, and once more a day later; return questions and answers.

    In Langfuse: four traces with an answer, one without. The refused one cost nothing.
    """
    seconds = [0.0]  # a clock that can be put forward
    budget = Budget(USER_LIMIT, timedelta(days=1), alert, clock=lambda: seconds[0])
    told = [
        (asked, answer_within_budget(client, budget, "ada", asked)) for asked in COMMON_QUESTIONS
    ]
    seconds[0] += 24 * 3600
    return [*told, (QUESTION, answer_within_budget(client, budget, "ada", QUESTION))]


# %% 6. Let Langfuse add it up, and compare
#
# The Metrics API sums where the data lies: no paging through a million calls. Averages
# hide the slow tail, so ask for the 95th percentile. A report is only worth its numbers
# when they agree with an account that was kept independently.

AGREE_WITHIN = Decimal("0.000000001")  # USD: a server rounds its sums
Measure = tuple[str, str]  # what, and how it is aggregated
SLOWEST = ("latency", "max")
IN_METADATA = {"type": "stringObject", "column": "metadata", "operator": "="}
COST, TOKENS, CALLS = ("totalCost", "sum"), ("totalTokens", "sum"), ("count", "count")


def ask_metrics(
    langfuse: Langfuse, run: str, measures: list[Measure], dimension: str = "", **more: Any
) -> Rows:
    """Return one row a value of the dimension, over the generations of this run.

    In Langfuse: the same query builds a chart under Dashboards. Users are many, so the
    API gives only the top of them, sorted by a measure.
    """
    now = datetime.now(UTC)
    query = {
        "view": "observations",
        "metrics": [{"measure": what, "aggregation": how} for what, how in measures],
        "dimensions": [{"field": dimension}] if dimension else [],
        "filters": [
            {"type": "string", "column": "type", "operator": "=", "value": "GENERATION"},
            {**IN_METADATA, "key": "run", "value": run},
        ],
        "fromTimestamp": (now - timedelta(days=7)).isoformat(),
        "toTimestamp": (now + timedelta(minutes=1)).isoformat(),
        **more,
    }
    rows: Rows = langfuse.api.metrics.metrics(query=json.dumps(query)).data
    return rows


def highest(measure: Measure, count: int) -> dict[str, Any]:
    """Return what a query needs to be sorted by a measure and cut after so many rows."""
    order = {"field": f"{measure[1]}_{measure[0]}", "direction": "desc"}
    return {"orderBy": [order], "config": {"row_limit": count}}


def by_tag(rows: Rows, prefix: str) -> dict[str, Decimal]:
    """Add up the cost in USD of rows that are grouped by tags, by the tag with this prefix.

    `by_tag([{"tags": ["team:a", "x"], "sum_totalCost": 1}], "team:") -> {"a": Decimal("1")}`
    """
    usd: defaultdict[str, Decimal] = defaultdict(Decimal)
    for row in rows:
        named = [tag.removeprefix(prefix) for tag in row["tags"] or [] if tag.startswith(prefix)]
        usd[named[0] if named else "unknown"] += usd_of(row)
    return dict(sorted(usd.items(), key=lambda item: -item[1]))


def usd_of(row: dict[str, Any]) -> Decimal:
    """Return the summed cost of a row in USD; a row without any cost has 0."""
    return Decimal(str(row["sum_totalCost"] or 0))


def differences(ledger: Ledger, rows: Rows) -> list[tuple[str, Decimal, Decimal]]:
    """Return each model whose stored cost is not the ledger's: model, ours, theirs, in USD."""
    stored = {row["providedModelName"]: usd_of(row) for row in rows}
    ours: dict[str, Decimal] = {**dict.fromkeys(stored, Decimal(0)), **ledger.usd}
    for account in (ours, stored):
        account["total"] = sum(account.values(), start=Decimal(0))
    compared = [(model, ours[model], stored.get(model, Decimal(0))) for model in ours]
    return [row for row in compared if abs(row[1] - row[2]) > AGREE_WITHIN]


def observations_of_run(langfuse: Langfuse, run: str, **wanted: Any) -> Iterable[ObservationV2]:
    """Yield all observations of a run, page by page until there is no cursor left.

    In Langfuse: the table of observations with a filter on the metadata key `run`.
    """
    same_run = {**IN_METADATA, "key": "run", "value": run}
    cursor = None
    while True:
        page = langfuse.api.observations.get_many(
            filter=json.dumps([same_run]),
            fields="core,basic,metadata,model,usage",
            limit=500,
            cursor=cursor,
            **wanted,
        )
        yield from page.data
        cursor = page.meta.cursor
        if cursor is None:
            return


def saved_by_cache(cached: Iterable[ObservationV2]) -> tuple[int, Decimal]:
    """Return how many answers came from the cache, and what their first calls had cost in USD."""
    saved = [Decimal((node.metadata or {}).get("saved_usd", "0")) for node in cached]
    return len(saved), sum(saved, start=Decimal(0))


def calls_without_cost(generations: Iterable[ObservationV2]) -> Counter[str]:
    """Return how many calls have no stored cost, by model: they are missing from every sum."""
    return Counter(
        node.model or "no model" for node in generations if "total" not in (node.cost_details or {})
    )


# %% 7. Hand the report to a spreadsheet


def write_csv(path: Path, rows: Iterable[tuple[object, ...]]) -> int:
    """Write rows to a CSV file and return how many.

    Names come from traces: a cell that a spreadsheet would run as a formula gets a quote
    before it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        cells = [
            [f"'{cell}" if str(cell)[:1] in "=+-@\t" and cell else cell for cell in row]
            for row in rows
        ]
        csv.writer(file).writerows(cells)
    return len(cells)


def cost_text(model: str, usd: Decimal, unpriced: Counter[str]) -> str:
    """Return a model's cost for people: what has no price is unknown, and not $0."""
    return f"unknown for {unpriced[model]} calls" if model in unpriced else f"${usd:.6f}"


def show_report(langfuse: Langfuse, run: str, ledger: Ledger) -> None:
    """Print what Langfuse adds up, hold it against the ledger, and write it to a file."""
    show_section("6. Let Langfuse add it up, and compare")
    with waiting("Waiting until every call is stored"):
        poll(
            lambda: ask_metrics(langfuse, run, [CALLS]),
            until=lambda rows: sum(int(row["count_count"]) for row in rows) >= ledger.calls,
        )
    models = ask_metrics(langfuse, run, [CALLS, TOKENS, COST], "providedModelName")
    levels = ask_metrics(langfuse, run, [CALLS, ("latency", "p95")], "level")
    users = ask_metrics(langfuse, run, [COST], "userId", **highest(COST, 100))
    days = ask_metrics(langfuse, run, [COST], timeDimension={"granularity": "day"})
    teams = by_tag(ask_metrics(langfuse, run, [COST], "tags"), "team:")
    [dearest] = ask_metrics(langfuse, run, [COST], "traceId", **highest(COST, 1))
    [slowest] = ask_metrics(langfuse, run, [SLOWEST], "traceId", **highest(SLOWEST, 1))
    unpriced = calls_without_cost(observations_of_run(langfuse, run, type="GENERATION"))
    show_table(
        ("model", "calls", "tokens", "cost"),
        [
            (
                name,
                row["count_count"],
                row["sum_totalTokens"],
                cost_text(name, usd_of(row), unpriced),
            )
            for row in models
            if (name := row["providedModelName"])
        ],
    )
    for row in levels:
        show_result(row["level"], f"{row['count_count']} calls, p95 {row['p95_latency']:.0f} ms")
    for bars in (
        teams,
        {row["userId"] or "unknown": usd_of(row) for row in users},
        {row["time_dimension"]: usd_of(row) for row in days},
    ):
        show_bars(bars)
    hits, saved = saved_by_cache(observations_of_run(langfuse, run, name="answer-from-cache"))
    show_line("")
    show_result("from the cache", f"{hits} of {TRAFFIC} ({hits / TRAFFIC:.0%}), saved ${saved:.6f}")
    show_result("slowest trace", f"{slowest['traceId']}, {slowest['max_latency']:.0f} ms")
    show_result("dearest trace", f"{dearest['traceId']}, ${usd_of(dearest):.6f}, drawn below")

    wrong = differences(ledger, models)
    for model, ours, theirs in wrong:
        show_line(f"  {model}: the ledger has ${ours:f}, Langfuse ${theirs:f}", "red")
    if wrong:
        fail("The report and the ledger do not agree.", 1)
    show_result("reconciled", f"Langfuse and the ledger agree on ${sum(ledger.usd.values()):f}")

    show_section("7. Hand the report to a spreadsheet")
    rows = [("by", "name", "USD"), *(("team", team, usd) for team, usd in teams.items())]
    rows += [("user", row["userId"] or "unknown", usd_of(row)) for row in users]
    rows += [("model", row["providedModelName"], usd_of(row)) for row in models]
    path = (TOP / read_settings()["LOCAL_LANGFUSE_DB"].value).with_name("cost.csv")
    show_result("rows written", f"{write_csv(path, rows)} to {path}")
    show_trace(langfuse, dearest["traceId"])


def main() -> None:
    """Everything that spends first; then the report, read back and held against the ledger."""
    langfuse = connect()
    client = openai_client()
    run = langfuse.create_trace_id()[:8]
    ids = iter([langfuse.create_trace_id() for _ in range(20)])
    short = messages_about(QUESTION, handbook())
    long = messages_about(QUESTION, handbook() * 5)

    show_section("1. Count tokens before the call, and read them after it")
    answered, usage = ask(client, model_name(), short, next(ids))
    show_result("before", count_message_tokens(short, model_name()))
    show_result("after", f"{usage['prompt_tokens']} tokens in, {usage['completion_tokens']} out")

    show_section("2. Turn usage into dollars, bucket by bucket")
    ask(client, model_name(), long, next(ids))
    answered, usage = ask(client, model_name(), long, next(ids))  # now its beginning is cached
    show_table((answered, "tokens", "USD"), cost_table(answered, usage))
    show_table((OWN_MODEL, "tokens", "USD"), cost_table(OWN_MODEL, {"input": 7, "output": 1}))

    show_section("3. Ask the same of several models")
    compared = list(compare_models(client, COMPARED_MODELS, short, [next(ids) for _ in range(4)]))
    show_table(
        ("model", "in", "out", "USD per 1,000"),
        [
            (name, used["prompt_tokens"], used["completion_tokens"], f"{1000 * usd:.4f}")
            for name, used, usd in compared
            if usd is not None
        ],
    )
    for name, used, _ in compared[-1:]:
        show_table((name, "tokens", "USD"), cost_table(name, used))

    show_section("4. Send a day of traffic, and keep a ledger of it")
    ledger = Ledger()
    day = plan_traffic(TRAFFIC, model_name())
    with progress("Answering", len(day)) as done:
        asyncio.run(send_traffic(day, run, ledger, done))
    show_result("requests", len(day))
    show_result("calls", ledger.calls)
    for model, usd in ledger.usd.items():
        show_result(model, f"${usd:.6f}")
    for model, calls in ledger.unpriced.items():
        show_result(model, f"{calls} calls, cost unknown")

    show_section("5. Stop before the money is spent")
    if price_of(model_name()) is None:
        show_line(f"  {model_name()} has no price, and a budget cannot hold what it cannot count.")
    else:
        told = spend_a_budget(
            client,
            lambda user, share: show_line(f"  Alert: {user} is at {share:.0%} of the budget"),
        )
        for question, answer in told:
            show_answer(question, answer)

    langfuse.flush()  # hand over what is waiting before anyone adds it up
    if tracing_is_on():
        show_report(langfuse, run, ledger)


if __name__ == "__main__":
    main()
