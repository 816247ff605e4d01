"""Measure what matters to the business.

Latency and cost say how an application runs, not whether it is any good. Scores say that:
from code, from users, from a model that judges, and from an experiment before a change
goes live.

Run it:

    python 05_custom_metrics.py

The traces have these shapes:

    answer-question                  chain       x 6
      write-answer                   generation

    judge-answer                     evaluator   x 7
      ask-judge                      generation

    experiment-item-run              span        x 24
      experiment-item-task           span
        write-answer                 generation
      experiment-item-evaluation     span
        contains_expected            evaluator

Try next: give CANDIDATE the value of BASELINE and BASELINE that of CANDIDATE, run again,
and look at the last line and at `echo $?`: the gate refuses the change.
"""

import json
import os
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import openai
from langfuse import (
    Evaluation,
    Langfuse,
    RegressionError,
    get_client,
    observe,
    propagate_attributes,
)
from langfuse.experiment import ExperimentResult
from langfuse.openai import OpenAI
from pydantic import BaseModel, Field

from common.client import connect, tracing_is_on
from common.console import (
    fail,
    show_answer,
    show_line,
    show_result,
    show_section,
    show_table,
    show_trace,
)
from common.readback import poll
from common.retriever import search

BASELINE = "Answer in one sentence, only from these passages:\n"
CANDIDATE = (
    "Answer in at most two sentences, only from the passages below. "
    'If they do not answer the question, say "The handbook does not say."\n'
)
CONVERSATIONS = {  # what each customer asks; the stars are made up, as if given later
    "ada": [("Can I return shoes after 20 days?", 5), ("When do I get the refund?", 4)],
    "bob": [("What does express delivery cost?", 1), ("Is it offered to islands?", 2)],
    "cyd": [("How often do leather shoes need wax?", 5), ("Do you repair bicycles?", 2)],
}


# %% 1. Score what happened, at the place where it happened
#
# A score has a type: a number, yes or no, one of some categories, or a text. It belongs
# to one observation, to a trace or to a whole session. An id of your own makes it safe to
# write twice: the second one replaces the first.


def passages_about(question: str) -> str:
    """Return the handbook's passages nearest to the question, one a line."""
    return "\n".join(passage.text for passage in search(question)) or "No passage was found."


def write_answer(client: OpenAI, instruction: str, question: str) -> str:
    """Ask for an answer from the passages that the search finds."""
    response = client.chat.completions.create(
        name="write-answer",
        model=os.environ["OPENAI_MODEL"],
        messages=[
            {"role": "system", "content": f"{instruction}{passages_about(question)}"},
            {"role": "user", "content": question},
        ],
        max_completion_tokens=500,
    )
    return response.choices[0].message.content or ""


@observe(name="answer-question", as_type="chain", capture_input=False)
def answer_question(client: OpenAI, question: str) -> str:
    """Answer, and score at once what code can tell about the answer.

    In Langfuse: `answer-words` and `answer-kind` are shown at the root of the trace. The
    first is a number to chart, the second a category to filter by.
    """
    langfuse = get_client()
    langfuse.update_current_span(input=question)
    answer = write_answer(client, BASELINE, question)
    trace_id = langfuse.get_current_trace_id()
    kind = "abstention" if re.search("does not say|No passage", answer) else "answer"
    langfuse.score_current_span(
        name="answer-words", value=len(answer.split()), score_id=f"{trace_id}-answer-words"
    )
    langfuse.score_current_trace(
        name="answer-kind", value=kind, data_type="CATEGORICAL", score_id=f"{trace_id}-answer-kind"
    )
    return answer


def close_session(langfuse: Langfuse, session_id: str, stars: list[int]) -> None:
    """Score a conversation as a whole: resolved when its last answer was liked.

    In Langfuse: open Sessions; `resolved` and the note stand beside the conversation.
    """
    langfuse.create_score(
        name="resolved",
        value=int(stars[-1] >= 4),
        data_type="BOOLEAN",
        session_id=session_id,
        score_id=f"{session_id}-resolved",
    )
    langfuse.create_score(
        name="note",
        value=f"Closed after {len(stars)} answers, the last one with {stars[-1]} stars.",
        data_type="TEXT",
        session_id=session_id,
        score_id=f"{session_id}-note",
    )


# %% 2. Take feedback that comes later, and may change
#
# The trace has long been sent when the user clicks on a star. All you need is its id:
# keep it with the answer you showed. Langfuse takes a score for the same one when id, name
# and day agree; a rating that may change tomorrow needs the first one's `timestamp=`, too.


def rate_answer(langfuse: Langfuse, trace_id: str, stars: int, comment: str) -> None:
    """Store one to five stars as a score from 0 to 1; a later rating replaces this one.

    In Langfuse: the score `user-rating` has one value a trace, whatever the user clicked
    before. Raises ValueError for any other number of stars.
    """
    if stars not in range(1, 6):
        raise ValueError(f"{stars} stars: give 1 to 5")
    langfuse.create_score(
        name="user-rating",
        value=(stars - 1) / 4,
        data_type="NUMERIC",
        trace_id=trace_id,
        comment=comment,
        score_id=f"{trace_id}-user-rating",
    )


# %% 3. Let a model judge
#
# A judge reads what the user does not: whether the answer follows from the passages. Give
# it a form to fill in, trace it like any other call, and store what it could not judge as
# a failure. A missing score must not become a zero.


class Judgement(BaseModel):
    """What the judge fills in."""

    relevance: float = Field(ge=0, le=1, description="how much of the question is answered, 0 to 1")
    faithfulness: float = Field(ge=0, le=1, description="how much the context supports, 0 to 1")
    toxicity: float = Field(ge=0, le=1, description="how insulting the answer is, 0 to 1")


def ask_judge(client: OpenAI, form: str, max_tokens: int) -> Judgement:
    """Return the form, filled in; raise ValueError or OpenAIError where that did not work.

    In Langfuse: select `ask-judge`. The schema of the form is part of the input, and the
    output is the JSON as the model wrote it, also when it could not be parsed.
    """
    response = client.chat.completions.parse(
        name="ask-judge",
        model=os.environ["OPENAI_MODEL"],
        messages=[
            {"role": "system", "content": "Judge the answer by the context alone."},
            {"role": "user", "content": form},
        ],
        response_format=Judgement,
        max_completion_tokens=max_tokens,
    )
    judgement = response.choices[0].message.parsed
    if judgement is None:
        raise ValueError("the judge refused")
    return judgement


@observe(name="judge-answer", as_type="evaluator", capture_input=False, capture_output=False)
def judge_answer(
    client: OpenAI, trace_id: str, question: str, answer: str, max_tokens: int = 200
) -> Judgement | None:
    """Score the trace of an answer by a model's judgement; None if there is none.

    In Langfuse: filter evaluators by level ERROR to find the judgements that failed. A
    rising share means that the judge, not the application, is getting worse.
    """
    langfuse = get_client()
    langfuse.update_current_span(input={"question": question, "answer": answer})
    form = f"Question: {question}\nContext: {passages_about(question)}\nAnswer: {answer}"
    try:
        judgement = ask_judge(client, form, max_tokens)
    except (openai.OpenAIError, ValueError) as error:
        message = f"no judgement: {type(error).__name__}, {str(error)[:80]}"
        langfuse.update_current_span(output="failed", level="ERROR", status_message=message)
        return None
    langfuse.update_current_span(output=judgement.model_dump())
    for name, value in judgement:
        langfuse.create_score(
            name=name, value=value, trace_id=trace_id, score_id=f"{trace_id}-{name}"
        )
    return judgement


# %% 4. Turn scores into the numbers that a business steers by
#
# How many conversations were resolved, and what one resolved conversation cost. Both are
# computed from what is stored, so they can be computed again next month.


def resolution(langfuse: Langfuse, session_ids: list[str]) -> tuple[int, int]:
    """Return how many of these sessions have a `resolved` score, and how many were resolved.

    In Langfuse: a chart of the boolean score `resolved`; its average is the rate.
    """
    page = langfuse.api.scores.get_many(name="resolved", session_id=",".join(session_ids))
    values = [bool(score.value) for score in page.data]
    return len(values), sum(values)


def cost_of_sessions(langfuse: Langfuse, session_ids: list[str], since: datetime) -> float:
    """Return the stored cost of these sessions in USD: the answers and their judges.

    In Langfuse: the column of cost under Sessions.
    """
    [row] = ask_metrics(
        langfuse,
        since,
        view="observations",
        metrics=[{"measure": "totalCost", "aggregation": "sum"}],
        filters=[
            {
                "type": "stringOptions",
                "column": "sessionId",
                "operator": "any of",
                "value": session_ids,
            }
        ],
    )
    return float(row["sum_totalCost"] or 0)


# %% 5. Follow a score over time, and look at its worst end
#
# An average hides the answers that went wrong: ask for the median and the lowest value,
# and for the score of each day, so that a bad release shows on the day it went out.


def ask_metrics(langfuse: Langfuse, since: datetime, **query: Any) -> list[dict[str, Any]]:
    """Return the rows of a Metrics API query over the time from `since` until now."""
    until = datetime.now(UTC) + timedelta(minutes=1)
    period = {"fromTimestamp": since.isoformat(), "toTimestamp": until.isoformat()}
    rows: list[dict[str, Any]] = langfuse.api.metrics.metrics(query=json.dumps(query | period)).data
    return rows


STATISTICS = ("avg", "p50", "min")


def score_statistics(langfuse: Langfuse, tag: str, since: datetime) -> list[dict[str, Any]]:
    """Return count, average, median and lowest value of each score on traces with this tag.

    In Langfuse: Dashboards, a chart of numeric scores by name.
    """
    return ask_metrics(
        langfuse,
        since,
        view="scores-numeric",
        dimensions=[{"field": "name"}],
        metrics=[
            {"measure": "count", "aggregation": "count"},
            *({"measure": "value", "aggregation": how} for how in STATISTICS),
        ],
        filters=[{"type": "arrayOptions", "column": "tags", "operator": "any of", "value": [tag]}],
    )


def rating_by_day(langfuse: Langfuse) -> list[dict[str, Any]]:
    """Return count and average of `user-rating`, of all runs, for each of seven days (UTC).

    In Langfuse: Dashboards, a chart of numeric scores over time.
    """
    return ask_metrics(
        langfuse,
        datetime.now(UTC) - timedelta(days=6),
        view="scores-numeric",
        metrics=[
            {"measure": "count", "aggregation": "count"},
            {"measure": "value", "aggregation": "avg"},
        ],
        timeDimension={"granularity": "day"},
        filters=[{"type": "string", "column": "name", "operator": "=", "value": "user-rating"}],
    )


# %% 6. Try a change on a dataset before your users do
#
# A dataset keeps questions with what a good answer must contain. Run the old and the new
# prompt on it, look at the items that changed, and let a gate refuse what is worse.

DATASET = "shop-questions"
ITEMS = [  # question, and the words that a good answer contains
    ("Can I return shoes after 20 days?", "30 days"),
    ("When do I get the refund?", "5 working days"),
    ("What does standard delivery cost?", "4.90 euros"),
    ("When is delivery free of charge?", "60 euros"),
    ("What does express delivery cost?", "12 euros"),
    ("Which size should I choose between two sizes?", "larger"),
    ("How often do leather shoes need wax?", "once a month"),
    ("How long is the warranty?", "two years"),
    ("When must an invoice be paid?", "14 days"),
    ("Do you repair bicycles?", "does not say"),
    ("Who founded the company?", "does not say"),
    ("Is there a discount for students?", "does not say"),
]


def prepare_dataset(langfuse: Langfuse) -> None:
    """Create the dataset and its items; on the next run the same ids are updated.

    In Langfuse: open Datasets. Add an item from any trace that went wrong, and it will
    not go wrong again unnoticed.
    """
    langfuse.create_dataset(name=DATASET, description="Questions with what an answer must contain")
    for number, (question, expected) in enumerate(ITEMS, 1):
        langfuse.create_dataset_item(
            dataset_name=DATASET,
            id=f"{DATASET}-{number:02}",
            input=question,
            expected_output=expected,
        )


def contains_expected(*, output: str, expected_output: str, **_: Any) -> Evaluation:
    """Score 1 when the answer contains what it must, else 0."""
    return Evaluation(name="correct", value=float(expected_output in output))


def share_correct(*, item_results: list[Any], **_: Any) -> Evaluation:
    """Score the run as a whole: the share of correct answers.

    An item whose task raised an error has no result. It counts as wrong, or a prompt that
    fails on the hard questions would look better for it.
    """
    correct = [e.value for r in item_results for e in r.evaluations if e.name == "correct"]
    return Evaluation(name="accuracy", value=sum(correct) / len(ITEMS))


def try_prompt(langfuse: Langfuse, client: OpenAI, name: str, instruction: str) -> ExperimentResult:
    """Answer every question of the dataset with this prompt, and score the answers.

    In Langfuse: open Datasets, then Experiments, and select both runs to compare them
    item by item.
    """

    def answer(*, item: Any, **_: Any) -> str:
        return write_answer(client, instruction, item.input)

    return langfuse.get_dataset(DATASET).run_experiment(
        name=f"{DATASET}-{name}",
        task=answer,
        evaluators=[contains_expected],
        run_evaluators=[share_correct],
    )


def accuracy_of(result: ExperimentResult) -> float:
    """Return the accuracy that the run evaluator found, from 0 to 1."""
    [accuracy] = [e.value for e in result.run_evaluations if e.name == "accuracy"]
    return float(accuracy)


def answers_of(result: ExperimentResult) -> dict[str, tuple[str, bool]]:
    """Return each question's answer, and whether it was correct; `failed` without a result."""
    answers = {question: ("failed", False) for question, _ in ITEMS}
    for each in result.item_results:
        item: Any = each.item
        correct = [e.value for e in each.evaluations if e.name == "correct"]
        answers[item.input] = (str(each.output), bool(correct and correct[0]))
    return answers


def changed_items(
    before: ExperimentResult, after: ExperimentResult
) -> Iterable[tuple[str, str, str, str]]:
    """Yield what became of it, question, old and new answer, where the verdict changed."""
    new_answers = answers_of(after)
    for question, (old, was_correct) in answers_of(before).items():
        new, is_correct = new_answers[question]
        if was_correct != is_correct:
            yield "better" if is_correct else "worse", question, old, new


def pass_or_refuse(before: ExperimentResult, after: ExperimentResult) -> None:
    """Raise `RegressionError` when the new prompt answers fewer questions correctly.

    Langfuse's GitHub Action turns this error into a failed check; any other CI sees the
    exit status.
    """
    if accuracy_of(after) < accuracy_of(before):
        raise RegressionError(
            result=after,
            metric="accuracy",
            value=accuracy_of(after),
            threshold=accuracy_of(before),
        )


Asked = list[tuple[str, str, str, str]]  # session, trace, question, answer


def hold_conversations(langfuse: Langfuse, client: OpenAI, run: str) -> Asked:
    """Answer every question of CONVERSATIONS, and store the ratings that come later."""
    asked: Asked = []
    for user, turns in CONVERSATIONS.items():
        session_id = f"chat-{user}-{run}"
        with propagate_attributes(user_id=user, session_id=session_id, tags=[f"run:{run}"]):
            for question, stars in turns:
                trace_id = langfuse.create_trace_id()
                answer = answer_question(client, question, langfuse_trace_id=trace_id)
                rate_answer(langfuse, trace_id, 3, "clicked in passing")
                rate_answer(langfuse, trace_id, stars, "thought again")
                asked.append((session_id, trace_id, question, answer))
        close_session(langfuse, session_id, [stars for _, stars in turns])
    return asked


def judge_all(client: OpenAI, asked: Asked, run: str) -> list[tuple[str, ...]]:
    """Return a row for each answer: the question, and what the judge says, or `failed`."""
    rows: list[tuple[str, ...]] = []
    for session_id, trace_id, question, answer in asked:
        with propagate_attributes(session_id=session_id, tags=[f"run:{run}"]):
            judged = judge_answer(client, trace_id, question, answer)
        rows.append((question, *([f"{v:.2f}" for _, v in judged] if judged else ["failed"])))
    return rows


def main() -> None:
    """Conversations with scores of every kind, the numbers they add up to, and a gate."""
    connect()
    langfuse, client = Langfuse(), OpenAI(timeout=60)
    started = datetime.now(UTC) - timedelta(seconds=1)
    run = langfuse.create_trace_id()[:8]

    show_section("1. and 2. Answers, scored by code, and rated later")
    asked = hold_conversations(langfuse, client, run)
    for _, _, question, answer in asked:
        show_answer(question, answer)
    show_section("3. What a judge says about them (the local one only counts shared words)")
    rows = judge_all(client, asked, run)
    show_table(("answer to", "relevance", "faithfulness", "toxicity"), rows)
    cut_off = judge_answer(client, *asked[0][1:], max_tokens=5)
    show_result("cut off", "judged" if cut_off else "failed: no score, but an error to count")
    if not tracing_is_on():
        show_line("  Sections 4 to 6 read back what is stored: not with tracing off.")
        return

    langfuse.flush()  # hand over what is waiting before anyone adds it up
    ids = list(dict.fromkeys(session_id for session_id, *_ in asked))
    closed, resolved = poll(lambda: resolution(langfuse, ids), until=lambda r: r[0] == len(ids))
    cost = cost_of_sessions(langfuse, ids, started)
    show_section("4. The numbers that a business steers by")
    show_result("resolution rate", f"{resolved} of {closed}")
    show_result("cost per resolved", f"${cost / resolved:.6f}" if resolved else "none resolved")

    show_section("5. The scores of this run, and the ratings of all runs by day")
    show_table(
        ("score", "count", "average", "median", "lowest"),
        [
            (row["name"], row["count_count"], *(f"{row[f'{how}_value']:.2f}" for how in STATISTICS))
            for row in score_statistics(langfuse, f"run:{run}", started)
        ],
    )
    for row in rating_by_day(langfuse):
        if row["count_count"]:
            said = f"{row['count_count']} ratings, {row['avg_value']:.2f} on average"
            show_result(row["time_dimension"], said)

    show_section("6. The old and the new prompt on the same twelve questions")
    show_answer("old", BASELINE.strip())
    show_answer("new", CANDIDATE.strip())
    prepare_dataset(langfuse)
    before = try_prompt(langfuse, client, "baseline", BASELINE)
    after = try_prompt(langfuse, client, "candidate", CANDIDATE)
    for verdict, question, old, new in changed_items(before, after):
        show_answer(f"{verdict}: {question}", f"{old}\n    -> {new}")
    show_result("accuracy", f"{accuracy_of(before):.2f} before, {accuracy_of(after):.2f} after")
    show_trace(asked[0][1])
    try:
        pass_or_refuse(before, after)
    except RegressionError as error:
        fail(f"The gate refuses the new prompt: {error}", 1)


if __name__ == "__main__":
    main()
