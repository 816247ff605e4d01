"""Report whether the answers are good, and fail when they are not.

Ratings sit in one place, costs in another, and a new prompt went live on Tuesday. Nobody can
say whether it helped, what a solved problem costs, or whether the judge that grades every
answer agrees with people. All of it is stored; this puts it together.

Run it:

    python -m recipes.quality_report
    python -m recipes.quality_report --days 1 --min-rating 0.6 --min-resolution 0.5

Where no answer of its prompt is stored yet, the first command makes some, with simulated
customers. With a limit it simulates nobody. The traces have these shapes:

    answer-question         chain       x 20
      find-passages         retriever
      write-answer          generation

    judge-answer            evaluator   x 12
      ask-judge             generation

The exit status is 0 within the limits; 1 below one; 2 when it cannot tell: nothing is stored,
Langfuse does not answer, or an option is wrong.

Try next: give CANDIDATE the text of PRODUCTION, set LOCAL_LANGFUSE_DB to the name of a new
file, and run. The two groups of customers get the same prompt, and their ratings still differ:
that much is chance.
"""

import hashlib
import json
import os
import statistics
import uuid
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
import openai
from langfuse import Langfuse, get_client, observe, propagate_attributes
from langfuse.api import ObservationV2
from langfuse.api.core import ApiError
from langfuse.model import TextPromptClient
from langfuse.openai import OpenAI
from pydantic import BaseModel, Field

from common.client import connect, tracing_is_on
from common.console import (
    fail,
    progress,
    show_line,
    show_result,
    show_section,
    show_table,
    usd_text,
    waiting,
)
from common.readback import poll
from common.retriever import search
from common.settings import read_settings
from recipes import Arguments

PROMPT = "answer-shop-question"
LABELS = ("production", "candidate")
PRODUCTION = "Answer in one sentence, only from these passages:\n{{passages}}"
CANDIDATE = (
    "Answer in at most two sentences, only from the passages below. "
    'If they do not answer the question, say "The handbook does not say."\n{{passages}}'
)
SIMULATED = "simulated"  # the tag of what no real customer asked
REVIEWED = 6  # simulated customers whose answers are also labelled by a reviewer
LONGEST_CHAT = timedelta(days=1)  # calls of a conversation are looked for so far back
JUDGED_PER_RUN = 50
CUSTOMERS = ("ada", "bob", "cyd", "dan", "eve", "fay", "gus", "hal", "ivy", "jan")
QUESTIONS = [  # and the words that a good answer contains
    ("Can I return shoes after 20 days?", "30 days"),
    ("What does express delivery cost?", "12 euros"),
    ("Do you repair bicycles?", "does not say"),
    ("When do I get the refund?", "5 working days"),
    ("How long is the warranty?", "two years"),
    ("Is there a discount for students?", "does not say"),
    ("When must an invoice be paid?", "14 days"),
]
CALLS = ["GENERATION", "EMBEDDING"]  # what carries tokens and cost
SCORES = "user-rating,resolved,reviewed-correct,judged-correct"
Ratings = dict[str, float]  # of each trace


# %% 1. Give two groups of customers two versions of a prompt
#
# A customer must get the same version each time, on every server. `hash()` differs from one
# process to the next, so take a digest. The prompt's name in it lets the next test, of another
# prompt, draw other groups.


def label_for(user_id: str, prompt_name: str, share: float = 0.5) -> str:
    """Return the label this user is served: a share of all users gets `candidate`."""
    digest = hashlib.sha256(f"{prompt_name}/{user_id}".encode()).digest()
    return "candidate" if int.from_bytes(digest[:8], "big") < share * 2**64 else "production"


def version_with(langfuse: Langfuse, label: str) -> int:
    """Return the version of PROMPT that has this label now, or 0 if none has it."""
    found = langfuse.api.prompts.list(name=PROMPT, label=label).data
    return found[0].versions[0] if found else 0


def create_missing_prompts(langfuse: Langfuse) -> None:
    """Create a version for each label that has none; those that exist are left alone.

    In Langfuse: open Prompts and the prompt. Move a label to another version, and its group
    of customers gets that one.
    """
    for label, text in zip(LABELS, (PRODUCTION, CANDIDATE), strict=True):
        if not version_with(langfuse, label):
            langfuse.create_prompt(name=PROMPT, prompt=text, labels=[label])


@observe(name="find-passages", as_type="retriever")
def find_passages(question: str) -> str:
    """Return the passages nearest to the question: what the judge will get to read, too."""
    return "\n".join(passage.text for passage in search(question)) or "No passage was found."


def answer_question(client: OpenAI, question: str, prompt: TextPromptClient) -> tuple[str, str]:
    """Return the answer, and the id of its trace, which ratings need later.

    In Langfuse: select `write-answer`. It names the prompt and the version that wrote it.
    """
    with get_client().start_as_current_observation(
        name="answer-question", as_type="chain", input=question
    ) as root:
        told = prompt.compile(passages=find_passages(question))
        response = client.chat.completions.create(
            name="write-answer",
            model=os.environ["OPENAI_MODEL"],
            messages=[{"role": "system", "content": told}, {"role": "user", "content": question}],
            max_completion_tokens=500,
            langfuse_prompt=prompt,
        )
        answer = response.choices[0].message.content or ""
        root.update(output=answer)
    return answer, root.trace_id


# %% 2. Simulate customers where there are none yet
#
# In your app these ratings come from people. Here they come from a rule, but the rule reads
# the answer and does not know which version wrote it, so that a version can win or lose.


def stars_for(answer: str, wanted: str) -> int:
    """Return one to five stars, as a customer might who wanted these words and little else."""
    if wanted in answer:
        return 5 if len(answer.split()) <= 20 else 4
    return 2 if "does not say" in answer else 1


def score(langfuse: Langfuse, name: str, value: float, kind: str, **subject: str) -> str:
    """Store a score of a trace or a session and return its id; a second one replaces it."""
    score_id = f"{next(iter(subject.values()))}-{name}"
    langfuse.create_score(name=name, value=value, data_type=kind, score_id=score_id, **subject)
    return score_id


def simulate_customer(langfuse: Langfuse, client: OpenAI, number: int, run: str) -> list[str]:
    """Hold one conversation of two questions and rate it; return the ids of all its scores.

    In Langfuse: under Sessions, `resolved` is beside the conversation. At its traces are the
    ratings, and the labels of a reviewer where there are any.
    """
    user, session_id, ids = CUSTOMERS[number], f"quality-{CUSTOMERS[number]}-{run}", []
    prompt = langfuse.get_prompt(PROMPT, label=label_for(user, PROMPT))
    with propagate_attributes(user_id=user, session_id=session_id, tags=[SIMULATED]):
        for question, wanted in (QUESTIONS[(2 * number + i) % len(QUESTIONS)] for i in (0, 1)):
            answer, trace_id = answer_question(client, question, prompt)
            stars, of_trace = stars_for(answer, wanted), {"trace_id": trace_id}
            ids.append(score(langfuse, "user-rating", (stars - 1) / 4, "NUMERIC", **of_trace))
            if number < REVIEWED:
                is_right = float(wanted in answer)
                ids.append(score(langfuse, "reviewed-correct", is_right, "BOOLEAN", **of_trace))
    # A conversation is resolved when its last answer was liked.
    ids.append(score(langfuse, "resolved", float(stars >= 4), "BOOLEAN", session_id=session_id))
    return ids


# %% 3. Read back what is stored
#
# Costs are read call by call. A sum from the server would be quicker, but it leaves out calls
# whose cost is unknown, and does not say so.


def stored_scores(
    langfuse: Langfuse, name: str, since: datetime, data_type: str = "BOOLEAN"
) -> list[Any]:
    """Return all scores with this name, the newest first; each has a value and a subject."""
    scores, cursor = [], None
    while True:
        page = langfuse.api.scores.get_many(
            name=name,
            data_type=data_type,
            from_timestamp=since,
            fields="subject",
            limit=100,
            cursor=cursor,
        )
        scores += page.data
        cursor = page.meta.cursor
        if cursor is None:
            return scores


def by_trace(scores: list[Any]) -> Ratings:
    """Return one value per trace, whether the trace was scored or a step of it; the newest wins."""
    kinds = {"trace": "id", "observation": "trace_id"}
    return {
        getattr(each.subject, kinds[each.subject.kind]): float(each.value)
        for each in reversed(scores)
        if each.subject.kind in kinds
    }


def stored_calls(langfuse: Langfuse, since: datetime) -> list[ObservationV2]:
    """Return all calls of a model with their cost, prompt version, user and session.

    In Langfuse: open Tracing, clear the filter on roots, and tick the types GENERATION and
    EMBEDDING.
    """
    types = {"type": "stringOptions", "column": "type", "operator": "any of", "value": CALLS}
    begun = {
        "type": "datetime",
        "column": "startTime",
        "operator": ">=",
        "value": since.isoformat(),
    }
    calls, cursor = [], None
    while True:
        page = langfuse.api.observations.get_many(
            filter=json.dumps([types, begun]),
            fields="core,basic,model,usage,prompt,trace_context",
            limit=1000,
            cursor=cursor,
        )
        calls += page.data
        cursor = page.meta.cursor
        if cursor is None:
            return calls


def total_cost(calls: Iterable[ObservationV2]) -> Decimal | None:
    """Return the cost of these calls in USD, or None if that of a single one is unknown.

    A call that failed before it used a token has cost nothing.
    """
    costs = [c.cost_details or {} for c in calls if c.usage_details or c.level != "ERROR"]
    if any("total" not in cost for cost in costs):
        return None
    return sum((Decimal(str(cost["total"])) for cost in costs), start=Decimal(0))


# %% 4. Turn scores into a few numbers that people can act on
#
# An answer is cheap; a customer who was helped is what you pay for. The rating of each day
# shows a bad release on the day it went out.


def resolution(scores: Iterable[Any]) -> dict[str, bool]:
    """Return for each session with a `resolved` score whether it was resolved.

    In Langfuse: a chart of the boolean score `resolved` under Dashboards has the same rate.
    """
    return {each.subject.id: bool(each.value) for each in scores if each.subject.kind == "session"}


def cost_per_resolved(resolved: dict[str, bool], calls: Iterable[ObservationV2]) -> str:
    """Return what all these conversations cost, the failed ones too, per resolved one."""
    own = [call for call in calls if call.session_id in resolved]
    usd = total_cost(own)
    if usd is None or not own:
        return f"unknown: {'some of these calls have no price' if own else 'no call is stored'}"
    count = sum(resolved.values())
    return usd_text(usd / count) if count else f"no conversation was resolved, for {usd_text(usd)}"


def ratings_by_day(langfuse: Langfuse, since: datetime, tag: str = "") -> list[dict[str, Any]]:
    """Return count and average of `user-rating` for each day in UTC; of one tag, if given.

    In Langfuse: under Dashboards, a chart of numeric scores over time. A tag belongs to the
    trace, so it finds no rating of a trace whose id was made up beforehand.
    """
    by_name = {"type": "string", "column": "name", "operator": "=", "value": "user-rating"}
    by_tag = {"type": "arrayOptions", "column": "tags", "operator": "any of", "value": [tag]}
    query = {
        "view": "scores-numeric",
        "metrics": [
            {"measure": "count", "aggregation": "count"},
            {"measure": "value", "aggregation": "avg"},
        ],
        "timeDimension": {"granularity": "day"},
        "filters": [by_name, by_tag] if tag else [by_name],
        "fromTimestamp": since.isoformat(),
        "toTimestamp": (datetime.now(UTC) + timedelta(minutes=1)).isoformat(),
    }
    rows: list[dict[str, Any]] = langfuse.api.metrics.metrics(query=json.dumps(query)).data
    return [row for row in rows if int(row["count_count"])]


# %% 5. Compare the versions of the prompt
#
# Labels move, versions do not: the generation says which version wrote an answer. Customers
# were assigned, not answers, so a customer counts once, however much they rated.


def by_version(calls: Iterable[ObservationV2]) -> dict[int, list[ObservationV2]]:
    """Return the calls of PROMPT by version, the oldest version first.

    In Langfuse: open the prompt, then Metrics: cost, latency and scores of each version.
    """
    versions: defaultdict[int, list[ObservationV2]] = defaultdict(list)
    for call in calls:
        if call.prompt_name == PROMPT and call.prompt_version is not None:
            versions[call.prompt_version].append(call)
    return dict(sorted(versions.items()))


def user_means(calls: Iterable[ObservationV2], ratings: Ratings) -> list[float]:
    """Return one rating per user: the mean of all that they gave to these calls."""
    by_user: defaultdict[str, list[float]] = defaultdict(list)
    for call in calls:
        if call.trace_id in ratings:
            by_user[call.user_id or call.trace_id].append(ratings[call.trace_id])
    return [statistics.fmean(each) for each in by_user.values()]


def verdict(before: list[float], after: list[float]) -> str:
    """Say what the difference of two groups' ratings is worth: twice its standard error."""
    if len(before) < 2 or len(after) < 2:
        return "too few customers to compare"
    change = statistics.fmean(after) - statistics.fmean(before)
    noise = 2 * sum(statistics.variance(each) / len(each) for each in (before, after)) ** 0.5
    said = "more than chance" if abs(change) > noise else "may be chance: ask more customers"
    return f"{change:+.2f} ± {noise:.2f}, {said}"


# %% 6. Find out how far the judge can be trusted
#
# A model can grade every answer; people cannot. So let people label some, let the judge grade
# the same ones, and read where they disagree. It must see the passages that the answer was
# written from, and its trace is not the customer's: no session, no user.


class Judgement(BaseModel):
    """What the judge fills in."""

    correct: bool = Field(description="whether the answer is right, going by the context alone")


def read_answer(langfuse: Langfuse, trace_id: str) -> tuple[str, str, str] | None:
    """Return question, passages and answer as they are stored; None where a part is missing."""
    page = langfuse.api.observations.get_many(trace_id=trace_id, fields="core,basic,io", limit=100)
    steps = {step.name: step for step in page.data}
    root, found = steps.get("answer-question"), steps.get("find-passages")
    if not root or not found or not root.output:
        return None
    return str(root.input), str(found.output), str(root.output)


@observe(name="judge-answer", as_type="evaluator", capture_input=False)
def judge_answer(client: OpenAI, question: str, passages: str, answer: str) -> bool | None:
    """Return whether the judge finds the answer correct; None where it gave no judgement.

    In Langfuse: the level ERROR marks a judgement that failed. It leaves no score, since a
    missing one must not become a "no".
    """
    form = f"Question: {question}\nContext: {passages}\nAnswer: {answer}"
    get_client().update_current_span(input=form)
    try:
        response = client.chat.completions.parse(
            name="ask-judge",
            model=os.environ["OPENAI_MODEL"],
            messages=[
                {"role": "system", "content": "Judge the answer by the context alone."},
                {"role": "user", "content": form},
            ],
            response_format=Judgement,
            max_completion_tokens=500,
        )
    except (openai.OpenAIError, ValueError) as error:
        message = f"no judgement: {type(error).__name__}, {str(error)[:80]}"
        get_client().update_current_span(level="ERROR", status_message=message)
        return None
    judgement = response.choices[0].message.parsed
    return judgement.correct if judgement else None


def judge_labelled(langfuse: Langfuse, client: OpenAI, trace_ids: list[str]) -> list[str]:
    """Judge these answers and return the ids of the scores; some may have no judgement."""
    ids = []
    with progress("Judging", len(trace_ids)) as done:
        for trace_id in trace_ids:
            stored = read_answer(langfuse, trace_id)
            correct = judge_answer(client, *stored) if stored else None
            if correct is not None:
                value = float(correct)
                ids.append(score(langfuse, "judged-correct", value, "BOOLEAN", trace_id=trace_id))
            done()
    return ids


def agreement(people: Ratings, judge: Ratings) -> tuple[str, list[str]]:
    """Return how often both agree, and the traces on which they do not.

    Where most answers are right, a judge that always says yes agrees often. So it also says
    how many of the wrong answers the judge found.
    """
    both = [trace_id for trace_id in people if trace_id in judge]
    differ = [trace_id for trace_id in both if people[trace_id] != judge[trace_id]]
    wrong = [trace_id for trace_id in both if not people[trace_id]]
    found = sum(not judge[trace_id] for trace_id in wrong)
    same = len(both) - len(differ)
    return f"{same} of {len(both)} labels; it found {found} of {len(wrong)} wrong answers", differ


# %% 7. Fail where quality is below a limit
#
# Cron, CI and a deployment all read an exit status. "Cannot tell" has one of its own: no
# rating at all is not a good rating.


def wait_until_stored(
    langfuse: Langfuse, since: datetime, score_ids: Iterable[str], answers: int = 0
) -> None:
    """Return when all these scores, and so many simulated answers, can be read back."""

    def missing() -> int:
        there = {each.id for each in stored_scores(langfuse, SCORES, since, "NUMERIC,BOOLEAN")}
        lost = len({*score_ids} - there)
        if lost or not answers:
            return lost
        rated = sum(int(day["count_count"]) for day in ratings_by_day(langfuse, since, SIMULATED))
        calls = sum(call.prompt_name == PROMPT for call in stored_calls(langfuse, since))
        return max(answers - min(rated, calls), 0)

    langfuse.flush()
    with waiting("Waiting until every score is stored"):
        lost = poll(missing, until=lambda count: not count)
    if lost:
        fail(f"Cannot tell: {lost} scores or answers of this run cannot be read back.", 2)


def simulate(langfuse: Langfuse, client: OpenAI, since: datetime) -> None:
    """Let all simulated customers ask and rate, and wait until all of it is stored."""
    create_missing_prompts(langfuse)
    run, ids = uuid.uuid4().hex[:8], list[str]()
    with progress("Asking", len(CUSTOMERS)) as done:
        for number in range(len(CUSTOMERS)):
            ids += simulate_customer(langfuse, client, number, run)
            done()
    wait_until_stored(langfuse, since, ids, answers=2 * len(CUSTOMERS))


def below_limits(measured: dict[str, float], limits: dict[str, float]) -> list[str]:
    """Return what is below its limit, as words; empty where nothing is.

    `below_limits({"rating": 0.5}, {"rating": 0.6}) -> ["rating 0.500 (at least 0.6)"]`
    """
    return [
        f"{name} {measured[name]:.3f} (at least {least:g})"
        for name, least in limits.items()
        if measured[name] < least - 1e-9
    ]


def read_options() -> tuple[int, dict[str, float]]:
    """Return the number of days, and the limits that were given."""
    parser = Arguments(prog="python -m recipes.quality_report")
    add_option = parser.add_argument
    add_option("--days", type=int, default=7, help="in UTC, with today; default: 7")
    add_option("--min-rating", type=float, help="average user-rating, from 0 to 1")
    add_option("--min-resolution", type=float, help="share of conversations, from 0 to 1")
    options = parser.parse_args()
    given = {"rating": options.min_rating, "resolution": options.min_resolution}
    limits = {name: least for name, least in given.items() if least is not None}
    if not 1 <= options.days <= 366:
        parser.error("--days must be from 1 to 366")
    if not all(0 <= least <= 1 for least in limits.values()):
        parser.error("a limit must be from 0 to 1: 60 % is written 0.6")
    return options.days, limits


def report_quality(langfuse: Langfuse, since: datetime) -> dict[str, float]:
    """Print resolution, cost and ratings; return the numbers that can have a limit."""
    show_section("1. Conversations and ratings")
    measured = {}
    resolved = resolution(stored_scores(langfuse, "resolved", since))
    if resolved:
        count = sum(resolved.values())
        measured["resolution"] = count / len(resolved)
        show_result("resolved", f"{count} of {len(resolved)} ({measured['resolution']:.0%})")
        calls = stored_calls(langfuse, since - LONGEST_CHAT)
        show_result("cost per resolved", cost_per_resolved(resolved, calls))
    days = ratings_by_day(langfuse, since)
    if days:
        total = sum(int(day["count_count"]) for day in days)
        points = sum(int(day["count_count"]) * day["avg_value"] for day in days)
        measured["rating"] = points / total
        simulated = ratings_by_day(langfuse, since, SIMULATED)
        made_up = sum(int(day["count_count"]) for day in simulated)
        said = f"{measured['rating']:.3f} on average, from 0 to 1"
        show_result("rating", f"{said}; {total} ratings, {made_up} by simulated customers")
    for day in days:
        said = f"{int(day['count_count'])} ratings, {day['avg_value']:.3f} on average"
        show_result(day["time_dimension"][:10], said)
    return measured


def report_versions(langfuse: Langfuse, since: datetime) -> None:
    """Print the versions of the prompt side by side, and what their difference is worth."""
    show_section(f"2. Versions of the prompt {PROMPT}")
    ratings = by_trace(stored_scores(langfuse, "user-rating", since, "NUMERIC"))
    versions = by_version(stored_calls(langfuse, since))
    if not versions:
        show_line("  No answer of this prompt is stored.")
        return
    labels = {label: version_with(langfuse, label) for label in LABELS}
    rows = []
    for number, calls in versions.items():
        means, usd = user_means(calls, ratings), total_cost(calls)
        rated = f"{statistics.fmean(means):.3f}" if means else "none"
        cost = "unknown" if usd is None else usd_text(usd / len(calls))
        own = ", ".join(label for label, version in labels.items() if version == number)
        rows.append((number, own, len(means), rated, len(calls), cost))
    show_table(("version", "label", "customers", "rating", "answers", "USD per answer"), rows)
    before, after = (user_means(versions.get(labels[each], []), ratings) for each in LABELS)
    show_result("candidate", verdict(before, after))


def report_judge(langfuse: Langfuse, client: OpenAI, since: datetime) -> None:
    """Let the judge grade what people labelled, and print where it disagrees."""
    show_section("3. Does the judge agree with people?")
    people = by_trace(stored_scores(langfuse, "reviewed-correct", since))
    judged = by_trace(stored_scores(langfuse, "judged-correct", since))
    waits = [trace_id for trace_id in people if trace_id not in judged]
    ids = judge_labelled(langfuse, client, waits[:JUDGED_PER_RUN])
    wait_until_stored(langfuse, since, ids)
    judged = by_trace(stored_scores(langfuse, "judged-correct", since))
    if not people:
        show_line("  No answer has the label `reviewed-correct`.")
        return
    same, differ = agreement(people, judged)
    show_result("the judge agrees on", same)
    left = sum(trace_id not in judged for trace_id in people)
    if left:
        show_result("not judged", f"{left} labels: the next run tries again")
    rows = []
    for trace_id in sorted(differ):
        stored = read_answer(langfuse, trace_id)
        question, answer = (stored[0], stored[2]) if stored else (trace_id, "")
        verdicts = ("right" if each[trace_id] else "wrong" for each in (people, judged))
        rows.append((question, answer, *verdicts))
    if rows:
        show_table(("they disagree on", "answer", "people", "judge"), rows)


def main() -> None:
    """Simulate where nothing is stored, report, and compare with the limits."""
    days, limits = read_options()
    connect()
    if not tracing_is_on():
        fail("Cannot tell: tracing is off. Unset LANGFUSE_TRACING_ENABLED.", 2)
    langfuse, client = Langfuse(), OpenAI(timeout=60)
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    since = today - timedelta(days=days - 1)
    try:
        if not limits and not any(c.prompt_name == PROMPT for c in stored_calls(langfuse, since)):
            if float(read_settings()["LANGFUSE_SAMPLE_RATE"].value) < 1:
                fail("Cannot tell: nothing is stored. Set LANGFUSE_SAMPLE_RATE to 1.", 2)
            show_line(f"No answer of the prompt {PROMPT} is stored: simulated customers ask.")
            simulate(langfuse, client, since)
        measured = report_quality(langfuse, since)
        report_versions(langfuse, since)
        report_judge(langfuse, client, since)
    except (httpx.HTTPError, ApiError) as error:
        said = f"it answered {error.status_code}" if isinstance(error, ApiError) else error
        fail(f"Cannot tell: Langfuse cannot be read ({said}).", 2)
    unknown = [name for name in limits if name not in measured]
    if unknown:
        said = f"no {' and no '.join(unknown)} is stored for the last {days} days"
        fail(f"Cannot tell: {said}. Without a limit, this makes simulated ones.", 2)
    below = below_limits(measured, limits)
    if below:
        fail(f"Below the limit: {', '.join(below)}.", 1)
    if limits:
        show_line("Within the limits.")


if __name__ == "__main__":
    main()
