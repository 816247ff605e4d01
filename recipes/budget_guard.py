"""Refuse a model call that a user's budget cannot pay for, before it is made.

A report tells you about money that is already gone. And a check of what was spent so far
lets any number of calls through at once, because none of them has cost anything yet. This
sets the worst case aside before each call, and gives back what the call did not cost.

Run it:

    python -m recipes.budget_guard

The traces have these shapes; how many questions are answered depends on what they cost:

    answer-within-budget    chain
      check-budget          guardrail
      write-answer          generation

    answer-within-budget    chain
      check-budget          guardrail

It lives in one process: two workers allow twice the limit, and a restart forgets what was
spent. For more than one, keep the reservations in a database that locks a user's row.

Try next: set USER_LIMIT to Decimal("0.00036") and predict from the costs you saw which
question is refused: the first whose worst case does not fit into what is left.
"""

import asyncio
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

from langfuse import Langfuse, get_client, observe, propagate_attributes
from langfuse.openai import AsyncOpenAI

from common.client import connect
from common.console import fail, show_answer, show_line, show_section, show_trace, usd_text
from common.pricing import cost_of, price_of, unpriced_buckets
from common.retriever import search
from common.tokens import count_message_tokens

USER_LIMIT = Decimal("0.00034")  # USD per user
WINDOW = timedelta(days=1)
ALERT_AT = Decimal("0.8")  # of the limit
MAX_TOKENS = 500  # of an answer, with what the model thinks; the worst case pays for all
QUESTIONS = (
    "What does express delivery cost?",
    "How long is the warranty?",
    "Can I pay by invoice?",
    "Can I return shoes after 20 days?",
    "Are your shoes small?",
    "Do you deliver to Norway?",
)
Messages = list[dict[str, Any]]


# %% 1. Count the worst case before the call
#
# Before the call you know its prompt and the longest answer you allow. Together they are the
# most it can cost, and you know that number while you can still say no.


def messages_about(question: str) -> Messages:
    """Return the chat that asks for an answer from the handbook's nearest passages."""
    passages = "\n".join(passage.text for passage in search(question))
    system = f"Answer in one sentence, only from these passages:\n{passages}"
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


def worst_case(model: str, messages: Messages, max_tokens: int) -> Decimal:
    """Return the most that a call can cost in USD: its prompt, and the longest answer.

    Raises ValueError for a model without a price: a budget cannot limit what it cannot
    count. An estimated number of tokens gets a third on top.
    """
    count, price = count_message_tokens(messages, model), price_of(model)
    if price is None:
        raise ValueError(f"{model} has no price: add it to PRICES in common/pricing.py.")
    tokens = count.tokens if count.exact else count.tokens * 4 // 3
    usd = price.per_token(tokens)
    # All of the prompt may be written to a cache, which costs more than reading it.
    dearest = max(usd["input"], usd.get("input_cache_write_tokens", usd["input"]))
    return tokens * dearest + max_tokens * usd["output"]


# %% 2. Reserve it, and settle when the cost is known
#
# The check and the reservation are one step under one lock. With a gap between them, two
# calls could both spend the last cent.


class BudgetExceededError(RuntimeError):
    """A call may cost more than the user has left."""


@dataclass
class Reservation:
    """What one call may cost, or has cost, in USD; `at` is the budget's clock in seconds.

    `alert` is the share of the limit that is spent or reserved, where this call is the first
    in the window to take it to 80 % or more.
    """

    at: float
    usd: Decimal
    alert: Decimal | None = None


class Budget:
    """A limit in USD per user over a rolling window; safe under threads and asyncio.

    It knows only the calls of its own process, and forgets them when that ends.
    """

    def __init__(
        self, limit: Decimal, window: timedelta, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limit, self.window, self.clock = limit, window, clock
        self._taken: defaultdict[str, list[Reservation]] = defaultdict(list)
        self._lock = threading.RLock()

    def taken(self, user: str) -> Decimal:
        """Return what a user has spent and reserved in the window, in USD."""
        with self._lock:
            oldest = self.clock() - self.window.total_seconds()
            self._taken[user] = [each for each in self._taken[user] if each.at > oldest]
            return sum((each.usd for each in self._taken[user]), start=Decimal(0))

    def reserve(self, user: str, worst_case: Decimal) -> Reservation:
        """Set the worst case aside and return what to settle; raise when it is too much."""
        with self._lock:
            taken = self.taken(user)
            if taken + worst_case > self.limit:
                raise BudgetExceededError(
                    f"{user} has spent or reserved {usd_text(taken)} of ${self.limit}, "
                    f"and this answer may cost {usd_text(worst_case)}"
                )
            share = (taken + worst_case) / self.limit
            is_news = share >= ALERT_AT and not any(each.alert for each in self._taken[user])
            reserved = Reservation(self.clock(), worst_case, share if is_news else None)
            self._taken[user].append(reserved)
            return reserved

    def settle(self, reserved: Reservation, cost: Decimal) -> None:
        """Replace what was reserved by what the call has cost in USD."""
        with self._lock:
            reserved.usd = cost


# %% 3. Refuse where a reviewer sees it
#
# A refusal is a decision about a user, so it belongs in the trace, with its reason.


@dataclass(frozen=True)
class Outcome:
    """What became of a question; a cost that is unknown stays reserved at its worst case."""

    text: str
    worst_case: Decimal
    reserved: Reservation | None = None  # None: refused
    cost: Decimal | None = None


@observe(name="check-budget", as_type="guardrail", capture_input=False, capture_output=False)
def check_budget(budget: Budget, user: str, usd: Decimal) -> Reservation:
    """Reserve the worst case; a refusal leaves this step as an ERROR with its reason.

    In Langfuse: clear the filter "Is Root Observation", then filter by name `check-budget`.
    Status ERROR shows who was refused, and WARNING who has used 80 % of the limit.
    """
    langfuse = get_client()
    langfuse.update_current_span(input={"user": user, "worst_case_usd": str(usd)})
    reserved = budget.reserve(user, usd)
    langfuse.update_current_span(output="within the budget")
    if reserved.alert:
        langfuse.update_current_span(level="WARNING", status_message=alert_text(user, reserved))
    return reserved


def alert_text(user: str, reserved: Reservation) -> str:
    """Return the alert in words, or "" where there is none; in production, post it to a chat."""
    share = reserved.alert
    return f"{user} has spent or reserved {share:.0%} of the limit" if share else ""


async def write_answer(client: AsyncOpenAI, messages: Messages) -> tuple[str, Decimal | None]:
    """Ask the model; return its answer and the cost in USD, None where that is unknown.

    In Langfuse: select `write-answer`. Its cost is what the budget was charged.
    """
    response = await client.chat.completions.create(
        name="write-answer",
        model=os.environ["OPENAI_MODEL"],
        messages=messages,
        max_completion_tokens=MAX_TOKENS,
    )
    usage = response.usage.model_dump() if response.usage else {}
    is_partial = unpriced_buckets(response.model, usage)
    cost = None if is_partial else cost_of(response.model, usage)
    return response.choices[0].message.content or "", cost


@observe(name="answer-within-budget", as_type="chain", capture_input=False, capture_output=False)
async def answer_within_budget(
    client: AsyncOpenAI, budget: Budget, user: str, question: str
) -> Outcome:
    """Answer if the user's budget allows it; otherwise say why not, and spend nothing.

    In Langfuse: a refused question is a trace without a generation and without a cost.
    """
    langfuse = get_client()
    with propagate_attributes(user_id=user):
        langfuse.update_current_span(input=question)
        messages = messages_about(question)
        most = worst_case(os.environ["OPENAI_MODEL"], messages, MAX_TOKENS)
        try:
            reserved = check_budget(budget, user, most)
        except BudgetExceededError as error:
            outcome = Outcome(f"Refused: {error}.", most)
        else:
            # If this fails, the worst case stays reserved: the provider may have billed it.
            text, cost = await write_answer(client, messages)
            outcome = Outcome(text, most, reserved, cost)
            if cost is not None:
                budget.settle(reserved, cost)
        langfuse.update_current_span(output=outcome.text)
    return outcome


# %% 4. Ask many questions at once
#
# This is where a check without a reservation lets everything pass.


async def ask_at_once(
    client: AsyncOpenAI, budget: Budget, user: str, questions: tuple[str, ...]
) -> list[Outcome]:
    """Ask all questions at the same time; all but those that fit together are refused."""
    answers = (answer_within_budget(client, budget, user, question) for question in questions)
    return await asyncio.gather(*answers)


def show_outcome(budget: Budget, user: str, question: str, outcome: Outcome) -> None:
    """Print an answer, what it could have cost and has cost, and the alert that it caused."""
    show_answer(question, outcome.text)
    if outcome.reserved:
        cost = "unknown" if outcome.cost is None else usd_text(outcome.cost)
        taken = f"{usd_text(budget.taken(user))} of ${budget.limit}"
        show_line(
            f"    reserved {usd_text(outcome.worst_case)}, cost {cost}; taken: {taken}", "dim"
        )
        if text := alert_text(user, outcome.reserved):
            show_line(f"    Alert: {text}", "yellow")


def main() -> None:
    """One question after the other, the day after, and many questions at once."""
    connect()
    Langfuse()
    model, client = os.environ["OPENAI_MODEL"], AsyncOpenAI(timeout=60)
    if price_of(model) is None:
        fail(f"{model} has no price: add it to PRICES in common/pricing.py.", 1)
    seconds = [0.0]  # a clock that can be put forward
    budget = Budget(USER_LIMIT, WINDOW, clock=lambda: seconds[0])

    with asyncio.Runner() as runner:
        show_section("One question after the other, until one is refused")
        for question in QUESTIONS:
            outcome = runner.run(answer_within_budget(client, budget, "gus", question))
            show_outcome(budget, "gus", question, outcome)
            if not outcome.reserved:
                break
        show_trace()

        show_section("The same question a day later")
        seconds[0] += WINDOW.total_seconds()
        outcome = runner.run(answer_within_budget(client, budget, "gus", question))
        show_outcome(budget, "gus", question, outcome)
        show_trace()

        show_section("Four questions at once, from a user who has spent nothing")
        asked = QUESTIONS[:4]
        outcomes = runner.run(ask_at_once(client, budget, "hal", asked))
        for question, outcome in zip(asked, outcomes, strict=True):
            show_outcome(budget, "hal", question, outcome)
        runner.run(client.close())


if __name__ == "__main__":
    main()
