"""Know what every call costs, and who it was for.

The bill comes once a month and names nobody. Give each call an owner, and Langfuse adds up
what a model, a team or a user costs while it happens. Ask it before a call, and you can
refuse the one that would go over a limit.

Run it:

    python 04_cost_monitoring.py

The traces:

    write-answer             generation  x 6

    classify-question        generation  x 2

    answer-request           chain       x 17
      write-answer           generation

    answer-request           chain       x 3
      classify-question      generation

    answer-request           chain       x 40

    answer-within-budget     chain       x 3
      check-budget           guardrail
      write-answer           generation

    answer-within-budget     chain
      check-budget           guardrail

Try next: set DAILY_LIMIT to Decimal("0.0003"), and predict which questions are refused.
"""

import json
import os
import random
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import openai
from langfuse import Langfuse, get_client, observe, propagate_attributes
from langfuse.api import ModelUsageUnit, ObservationV2, PricingTierInput
from langfuse.openai import OpenAI

from common import console
from common.client import connect, tracing_is_on
from common.console import show_answer, show_result, show_section, show_table, show_trace
from common.pricing import price_of
from common.readback import poll, sent_count
from common.retriever import handbook, search
from common.tokens import count_message_tokens

QUESTION = "Can I return shoes after 20 days?"
COMMON = ["How long is the warranty?", "Can I pay by invoice?", "Are your shoes small?"]
MODELS = ["gpt-6-luna", "gpt-5.4-mini", "gpt-6-sol"]
OWN_MODEL = "shop-topics"  # our own, traced by hand; Langfuse has no price for it
REQUESTS = 60  # of the simulated day
DAILY_LIMIT = Decimal("0.00035")  # USD per user
MAX_TOKENS = 500  # per answer, including what the model thinks before it answers
Messages = list[dict[str, str]]
Rows = list[dict[str, Any]]


# %% 1. Count tokens before the call, and read them after it
#
# A limit needs a number before the call; the bill comes from the usage after it.


def messages_about(question: str, passages: list[str]) -> Messages:
    """Return a chat that asks for an answer from these passages."""
    told = "Answer in one sentence, only from these passages:\n" + "\n".join(passages)
    return [{"role": "system", "content": told}, {"role": "user", "content": question}]


def write_answer(client: OpenAI, model: str, messages: Messages) -> str:
    """Ask the model.

    In Langfuse: select `write-answer`, and compare its input tokens with your own count.
    """
    response = client.chat.completions.create(
        name="write-answer", model=model, messages=messages, max_completion_tokens=MAX_TOKENS
    )
    return response.choices[0].message.content or ""


# %% 2. Turn usage into dollars, bucket by bucket
#
# Reading input from the provider's cache costs less, writing it there costs more, reasoning is
# billed as output. What has no price is in no sum: the tree shows ≥ or unknown, never $0.


def buckets_of(stored: list[ObservationV2]) -> Iterator[tuple[str, int, str]]:
    """Yield bucket, tokens and USD. In Langfuse, select a call to see the same."""
    for call in stored:
        costs = call.cost_details or {}
        for name, tokens in sorted((call.usage_details or {}).items()):
            if tokens and name != "total":
                yield name, tokens, f"{costs[name]:.8f}" if name in costs else "no price"


@observe(name="classify-question", as_type="generation", capture_input=False)
def classify_question(model: str, question: str) -> str:
    """Return the topic of a question, traced as a call of our own model."""
    topic = "delivery" if "order" in question else "other"
    usage = {"input": len(question.split()), "output": 1}
    get_client().update_current_generation(model=model, input=question, usage_details=usage)
    return topic


def set_price(langfuse: Langfuse, model: str, usd: dict[str, float]) -> None:
    """Give a model that Langfuse does not know its price: USD per token, from now on.

    In Langfuse (not on the local page): open Settings, then Models.
    """
    page = 1
    while known := langfuse.api.models.list(page=page, limit=100).data:
        if any(each.model_name == model for each in known):
            return
        page += 1
    tier = PricingTierInput(name="Standard", is_default=True, priority=0, conditions=[], prices=usd)
    match, unit = f"(?i)^({model})$", ModelUsageUnit.TOKENS
    create = langfuse.api.models.create
    create(model_name=model, match_pattern=match, unit=unit, pricing_tiers=[tier])


# %% 3. Ask the same of several models
#
# Prices are per token, but you pay per answer: a model that thinks first costs more.


def try_model(client: OpenAI, model: str, messages: Messages) -> str:
    """Ask a model, or say that the service does not have it."""
    try:
        return write_answer(client, model, messages)
    except openai.NotFoundError:
        return "(not offered here)"


# %% 4. Give every call an owner
#
# The user is the user, the team is a tag, anything else you will filter by is metadata. The
# cheapest call is the one you do not make, so answers are cached.


def plan_traffic(count: int, model: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield a day's requests: question, model, team and user; the same for every run."""
    dice = random.Random(4)  # noqa: S311  a simulation, not a secret
    for number in range(count):
        order = f"When will order A-{1000 + number} be delivered?"
        asked = dice.choice([model, model, model, OWN_MODEL])
        if number % 20 == 7:
            asked = "gpt-6-lunna"  # a typo in somebody's configuration
        team, user = dice.choice(["support", "sales"]), dice.choice(["ada", "bob", "cyd", "dan"])
        yield dice.choice([order, *COMMON]), asked, team, user


@observe(name="answer-request", as_type="chain", capture_input=False)
def answer_request(client: OpenAI, cache: dict[str, str], question: str, model: str) -> str:
    """Answer from the cache, or ask a model and put its answer there.

    In Langfuse: filter by the metadata `cached`. These roots have no children and no cost.
    """
    get_client().update_current_span(input=question, metadata={"cached": question in cache})
    if question in cache:
        return cache[question]
    if model == OWN_MODEL:
        return classify_question(model, question)
    passages = [passage.text for passage in search(question)]
    try:
        cache[question] = write_answer(client, model, messages_about(question, passages))
    except openai.NotFoundError:
        return "Sorry, I cannot answer at the moment."
    return cache[question]


# %% 5. Ask Langfuse who spent what
#
# A sum hides the calls without a price, an average hides the slow ones. Ask for both.

CALLS = {"column": "type", "operator": "=", "value": "GENERATION", "type": "string"}
RUN = {"column": "metadata", "key": "run", "operator": "=", "type": "stringObject"}


def ask_metrics(langfuse: Langfuse, filters: Rows, *measures: str, by: str = "") -> Rows:
    """Return one row per value of `by` since midnight (UTC); Dashboards chart the same query."""
    pairs = [measure.split("_") for measure in measures]  # "sum_totalCost": sum, totalCost
    now = datetime.now(UTC)
    query = {
        "view": "observations",
        "metrics": [{"measure": what, "aggregation": how} for how, what in pairs],
        "dimensions": [{"field": by}] if by else [],
        "orderBy": [{"field": measures[0], "direction": "desc"}] if by else [],
        "config": {"row_limit": 100},
        "filters": filters,
        "fromTimestamp": now.replace(hour=0, minute=0, second=0).isoformat(),
        "toTimestamp": (now + timedelta(minutes=1)).isoformat(),
    }
    rows: Rows = langfuse.api.metrics.metrics(query=json.dumps(query)).data
    return rows


def cost_by(langfuse: Langfuse, run: str, field: str, owner: str) -> list[tuple[str, ...]]:
    """Return owner, calls, USD and p95 in ms. In Langfuse, filter by User or Tags, sort by Cost."""
    filters = [CALLS, {**RUN, "value": run}]
    measures = ("sum_totalCost", "count_count", "p95_latency")
    table: list[tuple[str, ...]] = []
    for row in ask_metrics(langfuse, filters, *measures, by=field):
        name = " ".join(row[field]) if field == "tags" else row[field]
        usd = console.usd_text(row["sum_totalCost"]) if row["sum_totalCost"] else "no cost"
        p95 = f"{row['p95_latency']:.0f}"
        table.append((name or f"(no {owner})", str(row["count_count"]), usd, p95))
    return table


def calls_without_cost(langfuse: Langfuse, run: str) -> Counter[str]:
    """Return how many calls that worked have no cost, by model: they are in no sum."""
    no_cost = {"column": "totalCost", "operator": "is null", "value": "", "type": "null"}
    wanted = json.dumps([CALLS, {**RUN, "value": run}, no_cost])
    page = langfuse.api.observations.get_many(filter=wanted, fields="basic,model", limit=1000)
    return Counter(call.model or "(no model)" for call in page.data if call.level != "ERROR")


# %% 6. Stop before the money is spent
#
# Before a call, ask what this user has spent today, and add the most that this call can
# cost. Two calls at the same moment can both pass; `recipes/budget_guard.py` prevents that.


def spent_today(langfuse: Langfuse, user: str) -> Decimal:
    """Return what a user has spent since midnight (UTC), in USD, to a millionth."""
    of_user = {"column": "userId", "operator": "=", "value": user, "type": "string"}
    [row] = ask_metrics(langfuse, [CALLS, of_user], "sum_totalCost")
    return round(Decimal(str(row["sum_totalCost"] or 0)), 6)


def worst_case(model: str, messages: Messages) -> Decimal:
    """Return the most that a call can cost in USD; raise ValueError if its model has no price."""
    price, count = price_of(model), count_message_tokens(messages, model)
    if price is None:
        raise ValueError(f"{model} has no price: add it to PRICES in common/pricing.py")
    usd = price.per_token(count.tokens)
    tokens = count.tokens if count.exact else count.tokens * 4 // 3  # an estimate gets a third more
    highest = usd.get("input_cache_write_tokens", usd["input"])
    return tokens * highest + MAX_TOKENS * usd["output"]


@observe(name="check-budget", as_type="guardrail")
def check_budget(user: str, spent: Decimal, may_cost: Decimal, limit: Decimal) -> None:
    """Raise PermissionError if this call could take the user over the limit.

    In Langfuse: clear "Is Root Observation", and set Name to `check-budget`, Status to ERROR.
    """
    if spent + may_cost > limit:
        asked = f"{user} has spent ${spent:.6f} of ${limit}, and this may cost ${may_cost:.6f}"
        raise PermissionError(asked)


@observe(name="answer-within-budget", as_type="chain", capture_input=False)
def answer_within_budget(client: OpenAI, user: str, spent: Decimal, question: str) -> str:
    """Answer if the user's budget allows it; if not, say so, and spend nothing."""
    get_client().update_current_span(input=question)
    model = os.environ["OPENAI_MODEL"]
    messages = messages_about(question, [passage.text for passage in search(question)])
    try:
        check_budget(user, spent, worst_case(model, messages), DAILY_LIMIT)
    except PermissionError as error:
        return f"Refused: {error}."
    return write_answer(client, model, messages)


def main() -> None:  # noqa: C901, PLR0912  a table of contents
    """Run the sections in order; each ends with what was stored of it."""
    connect()
    langfuse, client, model = Langfuse(), OpenAI(), os.environ["OPENAI_MODEL"]
    messages, long = (messages_about(QUESTION, handbook() * times) for times in (1, 5))
    with propagate_attributes(user_id="ada", tags=["team:support"]):
        show_section("1. Count tokens before the call, and read them after it")
        show_result("before", count_message_tokens(messages, model))
        show_answer(QUESTION, write_answer(client, model, messages))
        show_trace()
        show_section("2. Turn usage into dollars, bucket by bucket")
        if tracing_is_on():
            set_price(langfuse, f"{OWN_MODEL}-2", {"input": 4e-7})
        for turn in ("a long prompt", "the same again"):
            show_result(turn, write_answer(client, model, long))
            show_table(("bucket", "tokens", "USD"), [*buckets_of(show_trace())])
        for own in (OWN_MODEL, f"{OWN_MODEL}-2"):
            show_result(own, classify_question(own, QUESTION))
            show_table(("bucket", "tokens", "USD"), [*buckets_of(show_trace())])
        show_section("3. Ask the same of several models")
        for each in MODELS:
            show_answer(each, try_model(client, each, messages))
            show_trace()

    show_section("4. Give every call an owner")
    run, cache, cached, before = uuid.uuid4().hex[:8], dict[str, str](), 0, sent_count()
    with console.progress("Answering", REQUESTS) as done:
        for question, asked, team, user in plan_traffic(REQUESTS, model):
            with propagate_attributes(user_id=user, tags=[f"team:{team}"], metadata={"run": run}):
                cached += question in cache
                answer_request(client, cache, question, asked)
            done()
    show_result("requests", f"{REQUESTS}, of which {cached} were answered from the cache")
    sent = sent_count() - before

    show_section("5. Ask Langfuse who spent what")
    if not tracing_is_on():
        console.show_line("  Skipped, and section 6 too: with tracing off nothing is stored.")
        return
    langfuse.flush()
    of_run = [CALLS, {**RUN, "value": run}]
    with console.waiting("Waiting until every call is stored"):
        [row] = poll(
            lambda: ask_metrics(langfuse, of_run[1:], "count_count"),
            until=lambda rows: int(rows[0]["count_count"]) >= sent,
        )
    show_result("stored", f"{row['count_count']} of {sent} observations")
    for owner, field in (("model", "providedModelName"), ("team", "tags"), ("user", "userId")):
        show_table((owner, "calls", "USD", "p95 ms"), cost_by(langfuse, run, field, owner))
    for row in ask_metrics(langfuse, of_run, "count_count", by="level"):
        show_result(row["level"], f"{row['count_count']} of the calls")
    for name, count in calls_without_cost(langfuse, run).items():
        show_result("without a price", f"{count} calls of {name}, which no sum includes")
    for label, measure in (("most expensive", "sum_totalCost"), ("slowest", "max_latency")):
        show_result(f"the {label} trace", "")
        for row in ask_metrics(langfuse, of_run, measure, by="traceId")[:1]:
            show_trace(row["traceId"])

    show_section("6. Stop before the money is spent")
    if price_of(model) is None:
        show_result(model, "has no price, so there is nothing to hold against a limit")
        return
    with propagate_attributes(user_id=f"gus-{run}", tags=["team:support"]):
        for question in [*COMMON, QUESTION]:
            spent = spent_today(langfuse, f"gus-{run}")
            show_answer(question, answer_within_budget(client, f"gus-{run}", spent, question))
            show_result("spent before", console.usd_text(spent))
            show_trace()


if __name__ == "__main__":
    main()
