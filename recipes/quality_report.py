"""Report whether the answers are good, and fail when they are not.

Ratings sit in one place, costs in another. Nobody can say whether the new prompt helped, what a
solved problem costs, or whether the judge agrees with people. This puts it together.

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

import json
import os
import uuid
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from hashlib import sha256
from statistics import fmean
from typing import Any

import httpx
from langfuse import Langfuse, get_client, observe, propagate_attributes
from langfuse.api.core import ApiError
from langfuse.openai import OpenAI
from pydantic import BaseModel, Field

from common import console
from common.client import connect, tracing_is_on
from common.console import fail, show_line, show_result, show_section, show_table
from common.errors import explain
from common.readback import poll
from common.retriever import search
from recipes import Arguments

PROMPT = "answer-shop-question"
PROMPTS = {  # by label; they differ in one thing
    "production": "Answer in one sentence, only from these passages:\n{{passages}}",
    "candidate": 'Answer in one sentence, only from these passages, or say "The handbook does not '
    'say.":\n{{passages}}',
}
QUESTIONS = {  # and the words that a good answer contains
    "Can I return shoes after 20 days?": "30 days",
    "What does express delivery cost?": "12 euros",
    "Do you repair bicycles?": "does not say",
    "When do I get the refund?": "5 working days",
    "How long is the warranty?": "two years",
}
CUSTOMERS = ["ada", "bob", "cyd", "dan", "eve", "fay", "gus", "hal", "ivy", "jan"]
ROWS = 1000  # calls and scores that are read; whoever has more must read page by page
MEASURES = [("value", "avg"), ("count", "count")]
Values = dict[str, float]  # of a score, by trace, session or day


# %% 1. Give two groups of customers two versions of a prompt
#
# A customer must get the same version each time, on every server. `hash()` differs from one
# process to the next, so take a digest; with the prompt's name, the next test has other groups.


def label_for(user_id: str) -> str:
    """Return the label this user is served: half of all users get `candidate`."""
    return "candidate" if sha256(f"{PROMPT}/{user_id}".encode()).digest()[0] < 128 else "production"


@observe(name="answer-question", as_type="chain", capture_input=False, capture_output=False)
def answer_question(client: OpenAI, question: str, label: str) -> tuple[str, str]:
    """Return the answer, and the id of its trace, which ratings need later.

    In Langfuse: select `write-answer`. It names the prompt and the version that wrote it.
    """
    prompt = get_client().get_prompt(PROMPT, label=label)
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


def simulate_customers(langfuse: Langfuse, client: OpenAI) -> set[str]:
    """Let each customer ask twice and rate; return the ids of all traces and sessions.

    The rule that rates does not know which version wrote an answer, so either can win.
    In Langfuse: open Prompts, and move a label to another version: its group gets that one.
    """
    for label, text in PROMPTS.items():
        if not langfuse.api.prompts.list(name=PROMPT, label=label).data:
            langfuse.create_prompt(name=PROMPT, prompt=text, labels=[label])
    score, sent, asked = langfuse.create_score, set[str](), iter([*QUESTIONS] * 4)
    for user in CUSTOMERS:
        session = f"quality-{user}-{uuid.uuid4().hex[:8]}"
        with propagate_attributes(user_id=user, session_id=session, tags=["simulated"]):
            for question in (next(asked), next(asked)):
                answer, trace = answer_question(client, question, label_for(user))
                right = QUESTIONS[question] in answer
                liked = 1.0 if right else 0.25 if "does not say" in answer else 0.0
                score(name="user-rating", value=liked, trace_id=trace)
                score(name="reviewed-correct", value=right, data_type="BOOLEAN", trace_id=trace)
                sent |= {trace, session}
        score(name="resolved", value=right, data_type="BOOLEAN", session_id=session)
    return sent


# %% 2. Read back what is stored
#
# Langfuse averages the scores. Costs are read call by call: a sum from the server leaves out
# calls whose cost is unknown, and does not say so. Prompts are compared by version, since a
# label moves, and a customer counts once, however much they rated.


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


def read_calls(langfuse: Langfuse) -> list[Any]:
    """Return the newest calls of a model, each with its cost, prompt version, user and session.

    In Langfuse: open Tracing, clear "Is Root Observation", and tick the type GENERATION.
    """
    calls = {"type": "string", "column": "type", "operator": "=", "value": "GENERATION"}
    wanted, fields = json.dumps([calls]), "core,basic,io,model,usage,prompt,trace_context"
    return [*langfuse.api.observations.get_many(filter=wanted, fields=fields, limit=ROWS).data]


def missing(langfuse: Langfuse, sent: set[str]) -> set[str]:
    """Return which of these sessions and traces cannot be read back yet, with their scores."""
    stored = [set(ask_scores(langfuse, name)) for name in ("user-rating", "reviewed-correct")]
    traces = {call.trace_id for call in read_calls(langfuse)}.intersection(*stored)
    return sent - traces - ask_scores(langfuse, "resolved", "sessionId").keys()


def cost_of_all(calls: list[Any], count: float) -> str:
    """Return the cost of all these calls, divided by `count`; unknown if that of one call is."""
    costs = [c.cost_details or {} for c in calls if c.usage_details or c.level != "ERROR"]
    if not count or not costs or any("total" not in cost for cost in costs):
        return "unknown"
    return console.usd_text(sum(Decimal(str(cost["total"])) for cost in costs) / Decimal(count))


def compare_versions(calls: list[Any], ratings: Values) -> Iterator[tuple[object, ...]]:
    """Yield for each version its customers, rating, answers, and USD per answer.

    In Langfuse: open the prompt, then Metrics: cost and scores of each version.
    """
    for version in sorted({call.prompt_version for call in calls}):
        own, by_user = [c for c in calls if c.prompt_version == version], defaultdict(list)
        for call in own:
            if call.trace_id in ratings:
                by_user[call.user_id or call.trace_id].append(ratings[call.trace_id])
        rating = f"{fmean(map(fmean, by_user.values())):.3f}" if by_user else "none"
        yield version, len(by_user), rating, len(own), cost_of_all(own, len(own))


# %% 3. Find out how far the judge can be trusted
#
# A model can grade every answer; people cannot. So let people label some, let the judge grade
# the same ones, and read where they disagree. A judge that always says yes agrees often.


class Judgement(BaseModel):
    """What the judge fills in."""

    correct: bool = Field(description="whether the answer is right, going by the context alone")


def read_answer(call: Any) -> tuple[str, str, str]:
    """Return question, context and answer of a stored `write-answer`."""
    context, *_, question = (message["content"] for message in json.loads(call.input))
    return question, context, json.loads(call.output)["content"]


@observe(name="judge-answer", as_type="evaluator", capture_input=False)
def judge_answer(client: OpenAI, call: Any) -> Values:
    """Score a stored answer by what the judge says of it; return nothing if it refuses to.

    In Langfuse: the judge has a trace of its own, so the customer's is not slower or dearer.
    """
    form = "Judge the answer.\nQuestion: {}\nContext: {}\nAnswer: {}".format(*read_answer(call))
    get_client().update_current_span(input=form)
    response = client.chat.completions.parse(
        name="ask-judge",
        model=os.environ["OPENAI_MODEL"],
        messages=[{"role": "user", "content": form}],
        response_format=Judgement,
        max_completion_tokens=500,
    )
    if not (judgement := response.choices[0].message.parsed):
        return {}
    store, trace, right = get_client().create_score, call.trace_id, judgement.correct
    store(name="judged-correct", value=right, data_type="BOOLEAN", trace_id=trace)
    return {trace: float(right)}


# %% 4. Report, and fail where quality is below a limit
#
# Cron and CI read the exit status. "Cannot tell" has its own: no rating is not a good rating.


def report(langfuse: Langfuse, *, is_simulated: bool) -> dict[str, Values]:
    """Print all of the report; return what can have a limit."""
    if is_simulated:
        sent = simulate_customers(langfuse, OpenAI(timeout=60))
        langfuse.flush()
        with console.waiting("Waiting until every answer and score is stored"):
            if lost := poll(lambda: missing(langfuse, sent), until=lambda lost: not lost):
                fail(f"Cannot tell: {len(lost)} answers or scores cannot be read back.", 2)
    show_section("1. Conversations and ratings")
    calls, resolved = read_calls(langfuse), ask_scores(langfuse, "resolved", "sessionId")
    solved, own = sum(resolved.values()), [c for c in calls if c.session_id in resolved]
    is_all = {call.session_id for call in own} == resolved.keys()  # or some were not read
    show_result("resolved", f"{solved:g} of {len(resolved)} conversations")
    show_result("cost per resolved", cost_of_all(own, solved * is_all))
    for day, average in ask_scores(langfuse, "user-rating", "time_dimension").items():
        show_result(f"rating {day[:10]}", f"{average:.3f} on average, from 0 to 1")
    show_section(f"2. Versions of the prompt {PROMPT}")
    ratings = ask_scores(langfuse, "user-rating")
    calls = [call for call in calls if call.prompt_name == PROMPT]
    columns = ("version", "customers", "rating", "answers", "USD per answer")
    show_table(columns, [*compare_versions(calls, ratings)])
    show_section("3. Does the judge agree with people?")
    people, judged = (ask_scores(langfuse, f"{by}-correct") for by in ("reviewed", "judged"))
    answers = {call.trace_id: call for call in calls if call.trace_id in people and call.output}
    for trace in answers.keys() - judged.keys() if is_simulated else ():
        judged |= judge_answer(OpenAI(timeout=60), answers[trace])
    both = answers.keys() & judged.keys()
    differ = sorted(trace for trace in both if people[trace] != judged[trace])
    show_result("they agree on", f"{len(both) - len(differ)} of {len(both)} labelled answers")
    rows = [(*read_answer(answers[t])[::2], "no" if judged[t] else "yes") for t in differ]
    show_table(("they disagree on", "answer", "right, say people"), rows)
    return {"min_rating": ratings, "min_resolution": resolved}


def main() -> None:
    """Report, and compare with the limits; without a limit, simulate first."""
    parser = Arguments(prog="python -m recipes.quality_report")
    parser.add_argument("--min-rating", type=float, help="average user-rating, from 0 to 1")
    parser.add_argument("--min-resolution", type=float, help="share of conversations, 0 to 1")
    limits = {name: least for name, least in vars(parser.parse_args()).items() if least is not None}
    connect(asks_model=not limits)
    if not tracing_is_on():
        fail("Cannot tell: tracing is off.", 2)
    try:
        measured = report(Langfuse(), is_simulated=not limits)
    except (httpx.HTTPError, ApiError) as error:
        fail(f"Cannot tell: {explain(error)}", 2)
    for name, least in limits.items():
        if not measured[name]:
            fail(f"Cannot tell: nothing is stored that --{name.replace('_', '-')} needs.", 2)
        average = fmean(measured[name].values())
        if not average >= least:
            fail(f"Below the limit: {average:.3f}, and {name} is {least:g}.", 1)
        show_line(f"Within the limit: {average:.3f}, and {name} is {least:g}.")


if __name__ == "__main__":
    main()
