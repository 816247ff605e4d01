"""Report whether the answers are good, and fail when they are not.

Ratings sit in one place, costs in another, and a new prompt went live on Tuesday. Nobody can
say whether it helped, what a solved problem costs, or whether the judge that grades every
answer agrees with people. All of it is stored; this puts it together.

Run it:

    python -m recipes.quality_report  # or with --min-rating 0.6 --min-resolution 0.5

Without a limit, simulated customers ask first. With one it only reads, and the exit status is
1 below a limit, or 2 when it cannot tell. The traces:

    answer-question         chain       x 20
      write-answer          generation

    judge-answer            evaluator   x 20
      ask-judge             generation

Try next: give both PROMPTS the same text, set LOCAL_LANGFUSE_DB to the name of a new file, and
run. The ratings of the two groups still differ: that much is chance.
"""

import hashlib
import json
import os
import uuid
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import cycle, islice
from statistics import fmean, stdev
from typing import Any

import httpx
from langfuse import Langfuse, get_client, observe, propagate_attributes
from langfuse.api.core import ApiError
from langfuse.model import TextPromptClient
from langfuse.openai import OpenAI
from pydantic import BaseModel, Field

from common import console
from common.client import connect, tracing_is_on
from common.console import fail, show_line, show_result, show_section, show_table, usd_text
from common.errors import explain
from common.readback import poll
from common.retriever import search
from recipes import Arguments

PROMPT = "answer-shop-question"
PROMPTS = {  # by label
    "production": "Answer in one sentence, only from these passages:\n{{passages}}",
    "candidate": "Answer in at most two sentences, only from these passages. If they do not "
    'answer the question, say "The handbook does not say."\n{{passages}}',
}
QUESTIONS = [  # and the words that a good answer contains
    ("Can I return shoes after 20 days?", "30 days"),
    ("What does express delivery cost?", "12 euros"),
    ("Do you repair bicycles?", "does not say"),
    ("When do I get the refund?", "5 working days"),
    ("How long is the warranty?", "two years"),
    ("Is there a discount for students?", "does not say"),
    ("When must an invoice be paid?", "14 days"),
]
CUSTOMERS = ["ada", "bob", "cyd", "dan", "eve", "fay", "gus", "hal", "ivy", "jan"]
ROWS = 1000  # calls and scores that are read; whoever has more must read page by page
MEASURES = [("value", "avg"), ("count", "count")]
VERSIONS = ("version", "customers", "rating", "±", "answers", "USD per answer")
Values = dict[str, float]  # of a score, by trace, session or day
Calls = list[Any]


# %% 1. Give two groups of customers two versions of a prompt
#
# A customer must get the same version each time, on every server. `hash()` differs from one
# process to the next, so take a digest; with the prompt's name, the next test has other groups.


def label_for(user_id: str) -> str:
    """Return the label this user is served: half of all users get `candidate`."""
    digest = hashlib.sha256(f"{PROMPT}/{user_id}".encode()).digest()
    return "candidate" if digest[0] < 128 else "production"


def create_missing_prompts(langfuse: Langfuse) -> None:
    """Create a version for each label that has none; those that exist are left alone.

    In Langfuse: open Prompts. Move a label to another version, and its group gets that one.
    """
    for label, text in PROMPTS.items():
        if not langfuse.api.prompts.list(name=PROMPT, label=label).data:
            langfuse.create_prompt(name=PROMPT, prompt=text, labels=[label])


@observe(name="answer-question", as_type="chain", capture_input=False, capture_output=False)
def answer_question(client: OpenAI, question: str, prompt: TextPromptClient) -> tuple[str, str]:
    """Return the answer, and the id of its trace, which ratings need later.

    In Langfuse: select `write-answer`. It names the prompt and the version that wrote it.
    """
    told = prompt.compile(passages="\n".join(passage.text for passage in search(question)))
    response = client.chat.completions.create(
        name="write-answer",
        model=os.environ["OPENAI_MODEL"],
        messages=[{"role": "system", "content": told}, {"role": "user", "content": question}],
        max_completion_tokens=500,
        langfuse_prompt=prompt,
    )
    answer = response.choices[0].message.content or ""
    get_client().update_current_span(input=question, output=answer)
    return answer, get_client().get_current_trace_id() or ""


# %% 2. Simulate the customers who rate
#
# A rule rates here. It reads the answer and does not know which version wrote it, so either
# can win. A conversation is resolved when its last answer was liked.


def stars_for(answer: str, wanted: str) -> int:
    """Return one to five stars, as a customer might who wanted these words and little else."""
    if wanted in answer:
        return 5 if len(answer.split()) <= 20 else 4
    return 2 if "does not say" in answer else 1


def simulate_customers(langfuse: Langfuse, client: OpenAI) -> set[str]:
    """Let each customer ask twice and rate; return the ids of all traces and sessions.

    In Langfuse: open Sessions to see `resolved` beside each conversation. At the traces are
    the ratings, and `reviewed-correct`, the label of a reviewer.
    """
    sent, run, score, asked = (
        set[str](),
        uuid.uuid4().hex[:8],
        langfuse.create_score,
        cycle(QUESTIONS),
    )
    for user in CUSTOMERS:
        session, prompt = (
            f"quality-{user}-{run}",
            langfuse.get_prompt(PROMPT, label=label_for(user)),
        )
        with propagate_attributes(user_id=user, session_id=session, tags=["simulated"]):
            for question, wanted in islice(asked, 2):
                answer, trace = answer_question(client, question, prompt)
                stars, right = stars_for(answer, wanted), int(wanted in answer)
                score(name="user-rating", value=(stars - 1) / 4, trace_id=trace)
                score(name="reviewed-correct", value=right, data_type="BOOLEAN", trace_id=trace)
                sent.add(trace)
        score(name="resolved", value=int(stars >= 4), data_type="BOOLEAN", session_id=session)
        sent.add(session)
    return sent


# %% 3. Read back what is stored
#
# Langfuse averages the scores. Costs are read call by call: a sum from the server leaves out
# calls whose cost is unknown, and does not say so. And failed conversations cost money, too.


def ask_scores(langfuse: Langfuse, name: str, by: str = "traceId") -> Values:
    """Return a week's averages of a score by `traceId`, `sessionId` or day (`time_dimension`).

    In Langfuse: under Dashboards, chart Scores (numeric) with this name over time.
    """
    now, is_day = datetime.now(UTC), by == "time_dimension"
    query = {
        "view": "scores-numeric",  # yes is 1 there, and no is 0
        "metrics": [{"measure": what, "aggregation": how} for what, how in MEASURES],
        "dimensions": [] if is_day else [{"field": by}],
        "timeDimension": {"granularity": "day"} if is_day else None,
        "orderBy": [] if is_day else [{"field": "count_count", "direction": "desc"}],
        "config": {"row_limit": ROWS},
        "filters": [{"type": "string", "column": "name", "operator": "=", "value": name}],
        "fromTimestamp": (now - timedelta(days=7)).isoformat(),
        "toTimestamp": (now + timedelta(minutes=1)).isoformat(),
    }
    rows = langfuse.api.metrics.metrics(query=json.dumps(query)).data
    return {row[by]: row["avg_value"] for row in rows if row[by] and int(row["count_count"])}


def read_calls(langfuse: Langfuse) -> Calls:
    """Return the newest calls of a model, each with its cost, prompt version, user and session.

    In Langfuse: open Tracing, clear "Is Root Observation", and tick the type GENERATION.
    """
    calls = {"type": "string", "column": "type", "operator": "=", "value": "GENERATION"}
    wanted, fields = json.dumps([calls]), "core,basic,io,model,usage,prompt,trace_context"
    return langfuse.api.observations.get_many(filter=wanted, fields=fields, limit=ROWS).data


def missing(langfuse: Langfuse, sent: set[str]) -> set[str]:
    """Return which of these sessions and traces cannot be read back yet, with their scores."""
    rated, labelled = (ask_scores(langfuse, name) for name in ("user-rating", "reviewed-correct"))
    complete = rated.keys() & labelled.keys() & {call.trace_id for call in read_calls(langfuse)}
    return sent - complete - ask_scores(langfuse, "resolved", "sessionId").keys()


def total_cost(calls: Calls) -> Decimal | None:
    """Return the cost of these calls in USD, or None if that of a single one is unknown."""
    costs = [c.cost_details or {} for c in calls if c.usage_details or c.level != "ERROR"]
    if any("total" not in cost for cost in costs):
        return None
    return sum((Decimal(str(cost["total"])) for cost in costs), start=Decimal(0))


def cost_per_resolved(resolved: Values, calls: Calls) -> str:
    """Return what all these conversations cost, the failed ones too, per resolved one."""
    own = [call for call in calls if call.session_id in resolved]
    usd, count = total_cost(own), sum(resolved.values())
    if usd is None or {call.session_id for call in own} != resolved.keys():
        return "unknown: a call was not read, or has no price"
    return usd_text(usd / int(count)) if count else f"nothing was resolved, for {usd_text(usd)}"


# %% 4. Compare the versions of the prompt
#
# Labels move, versions do not: the generation says which version wrote an answer. Customers
# were assigned, not answers, so a customer counts once, however much they rated.


def compare_versions(calls: Calls, ratings: Values) -> list[tuple[object, ...]]:
    """Return version, customers, rating, twice its standard error, answers, USD per answer.

    In Langfuse: open the prompt, then Metrics: cost and scores of each version.
    """
    rows: list[tuple[object, ...]] = []
    for version in sorted({call.prompt_version for call in calls}):
        own, by_user = [c for c in calls if c.prompt_version == version], defaultdict(list)
        for call in own:
            if call.trace_id in ratings:
                by_user[call.user_id or call.trace_id].append(ratings[call.trace_id])
        means, usd = [fmean(each) for each in by_user.values()], total_cost(own)
        rated = f"{fmean(means):.3f}" if means else "none"
        error = f"± {2 * stdev(means) / len(means) ** 0.5:.3f}" if len(means) > 1 else "unknown"
        cost = "unknown" if usd is None else usd_text(usd / len(own))
        rows.append((version, len(means), rated, error, len(own), cost))
    return rows


# %% 5. Find out how far the judge can be trusted
#
# A model can grade every answer; people cannot. So let people label some, let the judge grade
# the same ones, and read where they disagree. A judge that always says yes agrees often.


class Judgement(BaseModel):
    """What the judge fills in."""

    correct: bool = Field(description="whether the answer is right, going by the context alone")


def read_answer(call: Any) -> tuple[str, str, str]:
    """Return instruction, question and answer of a stored `write-answer`."""
    instruction, question = (message["content"] for message in json.loads(call.input))
    return instruction, question, json.loads(call.output)["content"]


@observe(name="judge-answer", as_type="evaluator", capture_input=False)
def judge_answer(client: OpenAI, call: Any) -> bool:
    """Return whether the judge finds the answer of a stored call correct, going by its context.

    In Langfuse: the judge has a trace of its own, so the customer's is not slower or dearer.
    """
    context, question, answer = read_answer(call)
    form = f"Question: {question}\nContext: {context}\nAnswer: {answer}"
    get_client().update_current_span(input=form)
    response = client.chat.completions.parse(
        name="ask-judge",
        model=os.environ["OPENAI_MODEL"],
        messages=[{"role": "user", "content": f"Judge the answer by the context alone.\n{form}"}],
        response_format=Judgement,
        max_completion_tokens=500,
    )
    return bool(response.choices[0].message.parsed.correct)


def agreement(people: Values, judge: Values) -> tuple[str, list[str]]:
    """Return how often both agree, and the traces on which they do not."""
    both = [trace_id for trace_id in people if trace_id in judge]
    differ = [trace_id for trace_id in both if people[trace_id] != judge[trace_id]]
    wrong = [trace_id for trace_id in both if not people[trace_id]]
    found = (
        f"it found {sum(not judge[trace_id] for trace_id in wrong)} of {len(wrong)} wrong answers"
    )
    return f"{len(both) - len(differ)} of {len(both)} labels; {found}", differ


# %% 6. Report, and fail where quality is below a limit
#
# Cron, CI and a deployment all read an exit status. "Cannot tell" has one of its own: no rating
# at all is not a good rating.


def report(langfuse: Langfuse, *, is_simulated: bool) -> Values:
    """Print all of the report; return the averages of what was measured."""
    if is_simulated:
        create_missing_prompts(langfuse)
        client = OpenAI(timeout=60)
        sent = simulate_customers(langfuse, client)
        langfuse.flush()
        with console.waiting("Waiting until every answer and score is stored"):
            if lost := poll(lambda: missing(langfuse, sent), until=lambda lost: not lost):
                fail(f"Cannot tell: {len(lost)} answers or scores cannot be read back.", 2)
    show_section("1. Conversations and ratings")
    ratings = ask_scores(langfuse, "user-rating")
    resolved = ask_scores(langfuse, "resolved", "sessionId")
    calls = read_calls(langfuse)
    ours = [call for call in calls if call.prompt_name == PROMPT]
    if resolved:
        show_result("resolved", f"{sum(resolved.values()):g} of {len(resolved)} conversations")
        show_result("cost per resolved", cost_per_resolved(resolved, calls))
    for day, average in ask_scores(langfuse, "user-rating", "time_dimension").items():
        show_result(f"rating {day[:10]}", f"{average:.3f} on average, from 0 to 1")
    show_section(f"2. Versions of the prompt {PROMPT}")
    show_table(VERSIONS, compare_versions(ours, ratings))
    show_section("3. Does the judge agree with people?")
    people, judged = (ask_scores(langfuse, f"{by}-correct") for by in ("reviewed", "judged"))
    answers = {call.trace_id: call for call in ours if call.trace_id in people}
    for trace_id in answers.keys() - judged.keys() if is_simulated else ():
        judged[trace_id] = judge_answer(client, answers[trace_id])
        langfuse.create_score(
            name="judged-correct", value=judged[trace_id], data_type="BOOLEAN", trace_id=trace_id
        )
    same, differ = agreement(people, judged)
    show_result("the judge agrees on", same)
    rows = [(*read_answer(answers[t])[1:], people[t], judged[t]) for t in differ if t in answers]
    show_table(("they disagree on", "answer", "people", "judge"), rows)
    found = {"min_rating": ratings, "min_resolution": resolved}
    return {name: fmean(values.values()) for name, values in found.items() if values}


def main() -> None:
    """Simulate where no limit is given, report, and compare with the limits."""
    parser = Arguments(prog="python -m recipes.quality_report")
    parser.add_argument("--min-rating", type=float, help="average user-rating, from 0 to 1")
    parser.add_argument("--min-resolution", type=float, help="share of conversations, 0 to 1")
    limits = {name: least for name, least in vars(parser.parse_args()).items() if least is not None}
    if not all(0 <= least <= 1 for least in limits.values()):
        parser.error("a limit must be from 0 to 1: 60 % is written 0.6")
    connect(asks_model=not limits)
    if not tracing_is_on():
        fail("Cannot tell: tracing is off.", 2)
    try:
        measured = report(Langfuse(), is_simulated=not limits)
    except (httpx.HTTPError, ApiError) as error:
        fail(f"Cannot tell: {explain(error)}", 2)
    if unknown := [name.removeprefix("min_") for name in limits if name not in measured]:
        fail(f"Cannot tell: no {' and no '.join(unknown)} is stored for the last 7 days.", 2)
    below = [
        f"{name} {measured[name]:.3f}, at least {least:g}"
        for name, least in limits.items()
        if measured[name] < least - 1e-9
    ]
    if below:
        fail(f"Below the limit: {'; '.join(below)}.", 1)
    if limits:
        show_line("Within the limits.")


if __name__ == "__main__":
    main()
