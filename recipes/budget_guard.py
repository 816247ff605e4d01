"""Refuse a model call that a user's budget cannot pay for, before it is made.

A report tells you about money that is already gone. And a check of what was spent so far
lets any number of calls through at once, because none of them has cost anything yet. This
sets the worst case aside before each call, and gives back what the call did not cost.

Run it:

    python -m recipes.budget_guard

The traces:

    answer-within-budget    chain        x 4
      check-budget          guardrail
      write-answer          generation

    answer-within-budget    chain        x 4
      check-budget          guardrail

It counts in one process: two workers allow twice the limit, and a restart forgets what was
spent. Where that matters, keep the sums in a database that locks a user's row.

Try next: set USER_LIMIT to Decimal("0.00031"), and predict which question is refused first.
"""

import asyncio
import os
import threading
from collections import defaultdict
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, NamedTuple

from langfuse import Langfuse, get_client, observe, propagate_attributes
from langfuse.openai import AsyncOpenAI

from common.client import connect
from common.console import show_answer, show_line, show_section, show_trace, usd_text
from common.pricing import cost_of, price_of, unpriced_buckets
from common.retriever import search
from common.tokens import count_message_tokens

USER_LIMIT = Decimal("0.00034")  # USD per user and day, which begins at midnight (UTC)
ALERT_AT = Decimal("0.8")  # of the limit
MAX_TOKENS = 500  # per answer, including what the model thinks before it answers
QUESTIONS = ["What does express delivery cost?", "How long is the warranty?"]
QUESTIONS += ["Can I pay by invoice?", "Can I return shoes after 20 days?"]
Messages = list[dict[str, Any]]


# %% 1. Count the worst case before the call
#
# Before the call you know its prompt and the longest answer you allow. Together they are the
# most it can cost, and you know that number while you can still say no.


def messages_about(question: str) -> Messages:
    """Return a chat that asks for an answer from the handbook's nearest passages."""
    passages = "\n".join(passage.text for passage in search(question))
    told = f"Answer in one sentence, only from these passages:\n{passages}"
    return [{"role": "system", "content": told}, {"role": "user", "content": question}]


def worst_case(model: str, messages: Messages) -> Decimal:
    """Return the most that a call can cost in USD; without a price nobody can tell: refuse it."""
    count, price = count_message_tokens(messages, model), price_of(model)
    if price is None:
        raise RefusedError(f"{model} has no price: add it to PRICES in common/pricing.py")
    tokens = count.tokens if count.exact else count.tokens * 4 // 3  # an estimate gets a third more
    usd = price.per_token(tokens)
    dearest = usd.get("input_cache_write_tokens", usd["input"])  # all of it may be written there
    return tokens * dearest + MAX_TOKENS * usd["output"]


# %% 2. Reserve it, and settle when the cost is known
#
# The check and the reservation are one step under one lock. With a gap between them, two
# calls could both spend the last cent.


class RefusedError(RuntimeError):
    """This call must not be made; the message says why."""


class Reservation(NamedTuple):
    """What is set aside for one call in USD, and from whose budget of which day."""

    account: tuple[str, date]
    usd: Decimal
    alert: str  # "", except for the day's first call that takes the user to 80 % of the limit


class Budget:
    """A limit in USD per user and day; safe under threads and asyncio."""

    def __init__(self, limit: Decimal) -> None:
        self.taken = defaultdict[tuple[str, date], Decimal](Decimal)  # spent or reserved
        self._alerted = set[tuple[str, date]]()
        self.limit, self._lock = limit, threading.Lock()

    def reserve(self, user: str, usd: Decimal) -> Reservation:
        """Set the worst case aside; raise `RefusedError` if that is more than is left."""
        account, alert = (user, datetime.now(UTC).date()), ""
        with self._lock:
            left = self.limit - self.taken[account]
            if usd > left:
                raise RefusedError(f"{user} has {usd_text(left)} left; it may cost {usd_text(usd)}")
            self.taken[account] += usd
            share = self.taken[account] / self.limit
            if share >= ALERT_AT and account not in self._alerted:
                self._alerted.add(account)
                alert = f"{user} has spent or reserved {share:.0%} of the limit"
        return Reservation(account, usd, alert)

    def settle(self, reserved: Reservation, cost: Decimal) -> None:
        """Replace what was reserved with what the call has cost in USD."""
        with self._lock:
            self.taken[reserved.account] += cost - reserved.usd


# %% 3. Refuse where a reviewer sees it
#
# A refusal is a decision about a user, so it belongs in the trace, with its reason.

Outcome = tuple[str, Reservation | None, Decimal | None]  # answer, None if refused, None if unknown


@observe(name="check-budget", as_type="guardrail", capture_input=False, capture_output=False)
def check_budget(budget: Budget, user: str, messages: Messages) -> Reservation:
    """Reserve the worst case; a refusal is recorded here as an error, with its reason.

    In Langfuse: clear "Is Root Observation", and set Name to `check-budget`. Status ERROR
    shows who was refused, and WARNING who has reached 80 % of the limit.
    """
    langfuse, usd = get_client(), worst_case(os.environ["OPENAI_MODEL"], messages)
    langfuse.update_current_span(input={"user": user, "worst_case_usd": str(usd)})
    reserved = budget.reserve(user, usd)
    if reserved.alert:  # in production, also post it to a chat
        langfuse.update_current_span(level="WARNING", status_message=reserved.alert)
    return reserved


async def write_answer(client: AsyncOpenAI, messages: Messages) -> tuple[str, Decimal | None]:
    """Ask the model; return its answer and the cost in USD, None where that is unknown.

    In Langfuse: select `write-answer`. Its cost is what the budget was charged.
    """
    model = os.environ["OPENAI_MODEL"]
    response = await client.chat.completions.create(
        name="write-answer", model=model, messages=messages, max_completion_tokens=MAX_TOKENS
    )
    usage = response.usage.model_dump() if response.usage else {}
    cost = None if unpriced_buckets(response.model, usage) else cost_of(response.model, usage)
    return response.choices[0].message.content or "", cost


@observe(name="answer-within-budget", as_type="chain", capture_input=False, capture_output=False)
async def answer_within_budget(
    client: AsyncOpenAI, budget: Budget, user: str, question: str
) -> Outcome:
    """Answer if the user's budget allows it; otherwise say why not, and spend nothing.

    In Langfuse: a refused question is a trace without a generation and without a cost.
    """
    messages, reserved, cost = messages_about(question), None, None
    with propagate_attributes(user_id=user):
        get_client().update_current_span(input=question)
        try:
            reserved = check_budget(budget, user, messages)
        except RefusedError as error:
            answer = f"Refused: {error}."
        else:  # if the call fails, the worst case stays reserved: it may have been billed
            answer, cost = await write_answer(client, messages)
            if cost is not None:
                budget.settle(reserved, cost)
        get_client().update_current_span(output=answer)
    return answer, reserved, cost


# %% 4. Ask one by one, then all at once
#
# One by one, each cost is known before the next question. All at once, none of them is: a
# check without a reservation would let every question pass.


def show_outcome(budget: Budget, question: str, outcome: Outcome) -> None:
    """Print an answer, what was set aside for it, its cost, and the alert that it caused."""
    answer, reserved, cost = outcome
    show_answer(question, answer)
    if reserved:
        paid = "unknown" if cost is None else usd_text(cost)
        taken = f"{usd_text(budget.taken[reserved.account])} of ${budget.limit}"
        show_line(f"    reserved {usd_text(reserved.usd)}, cost {paid}; taken: {taken}", "dim")
        if reserved.alert:
            show_line(f"    Alert: {reserved.alert}", "yellow")


async def main() -> None:
    """Ask one question after the other, then all of them at the same time."""
    connect()
    Langfuse()
    budget = Budget(USER_LIMIT)
    async with AsyncOpenAI(timeout=60) as client:
        show_section("One question after the other")
        for each in QUESTIONS:
            show_outcome(budget, each, await answer_within_budget(client, budget, "gus", each))
            show_trace()
        show_section("All at once, from a user who has spent nothing")
        at_once = (answer_within_budget(client, budget, "hal", each) for each in QUESTIONS)
        for each, outcome in zip(QUESTIONS, await asyncio.gather(*at_once), strict=True):
            show_outcome(budget, each, outcome)


if __name__ == "__main__":
    asyncio.run(main())
