"""Find out whether the answers are any good, and whether the next version is better.

Latency and cost do not say whether an answer helped anybody. Scores do: from code, from users,
from a model that judges. A dataset of bad answers tells you whether a change helps.

Run it:

    python 05_custom_metrics.py

The traces:

    answer-question                  chain       x 6
      write-answer                   generation

    judge-answer                     evaluator   x 7
      ask-judge                      generation

    experiment-item-run              span        x 12
      experiment-item-task           span
        write-answer                 generation
      experiment-item-evaluation     span
        contains_expected            evaluator

Try next: let BASELINE ask for two sentences and CANDIDATE for one, and look at `echo $?`.
"""

import json
import os
import uuid
from dataclasses import dataclass
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
from common.console import fail, show_answer, show_result, show_section, show_trace, waiting
from common.readback import poll
from common.retriever import search

BASELINE = """Answer in one sentence, only from the passages below.
If they do not answer the question, say "The handbook does not say."\n"""
CANDIDATE = BASELINE.replace("one sentence", "two sentences")  # change one thing at a time
CONVERSATIONS = {  # what each customer asks; the stars are made up, as if given later
    "ada": [("Can I return shoes after 20 days?", 5), ("When do I get the refund?", 2)],
    "bob": [("What does express delivery cost?", 1), ("Is it offered to islands?", 4)],
    "cyd": [("How often do leather shoes need wax?", 5), ("Do you repair bicycles?", 3)],
}


# %% 1. Score what happened, where it happened
#
# A score is a number, yes or no, a category or a text, of an observation, a trace or a session.


@dataclass(frozen=True)
class Answer:
    """An answer, what the model was given to read, and its trace, to be scored later."""

    question: str
    text: str
    passages: str
    trace_id: str


def write_answer(client: OpenAI, instruction: str, question: str) -> tuple[str, str]:
    """Return an answer, and the passages that the model was given."""
    passages = "\n".join(passage.text for passage in search(question)) or "No passage was found."
    told = {"role": "system", "content": instruction + passages}
    response = client.chat.completions.create(
        name="write-answer",
        model=os.environ["OPENAI_MODEL"],
        messages=[told, {"role": "user", "content": question}],
        max_completion_tokens=500,
    )
    return response.choices[0].message.content or "", passages


@observe(name="answer-question", as_type="chain", capture_input=False, capture_output=False)
def answer_question(client: OpenAI, question: str) -> Answer:
    """Answer, and score at once what code can tell.

    In Langfuse: select the root, then Scores. Chart the number, filter by the category.
    """
    langfuse = get_client()
    text, passages = write_answer(client, BASELINE, question)
    langfuse.update_current_span(input=question, output=text)
    kind = "abstention" if "does not say" in text else "answer"
    langfuse.score_current_span(name="answer-words", value=len(text.split()))
    langfuse.score_current_trace(name="answer-kind", value=kind, data_type="CATEGORICAL")
    return Answer(question, text, passages, langfuse.get_current_trace_id() or "")


def close_session(langfuse: Langfuse, session_id: str, stars: list[int]) -> None:
    """Score a conversation as a whole: resolved if its last answer was liked.

    In Langfuse: open Sessions, and see `resolved` in the row of the session.
    """
    liked, note = int(stars[-1] >= 4), f"Closed after {len(stars)} answers."
    score = langfuse.create_score
    score(name="resolved", value=liked, data_type="BOOLEAN", session_id=session_id)
    score(name="note", value=note, data_type="TEXT", session_id=session_id)


# %% 2. Take feedback that comes later, and may change
#
# Keep the trace's id with the answer, and you can score it later. A score with the same id,
# name and day replaces the earlier one; the later `timestamp` wins.


def rate_answer(langfuse: Langfuse, trace_id: str, stars: int, clicked_at: datetime) -> None:
    """Store one to five stars as a score from 0 to 1; a later click replaces an earlier one.

    In Langfuse: `user-rating` has one value per trace, however often the user clicked.
    """
    langfuse.create_score(
        name="user-rating",
        value=(stars - 1) / 4,
        trace_id=trace_id,
        score_id=f"{trace_id}-user-rating",
        timestamp=clicked_at,
    )


# %% 3. Let a model judge
#
# Does the answer follow from the passages it had? The judge runs in a trace of its own, or the
# customer's would take longer and cost more. A judgement that failed is not a zero.


class Judgement(BaseModel):
    """What the judge fills in."""

    relevance: float = Field(ge=0, le=1, description="how much of the question is answered")
    faithfulness: float = Field(ge=0, le=1, description="how much the passages support")


def ask_judge(client: OpenAI, answer: Answer, max_tokens: int) -> Judgement:
    """Return the form as the model filled it in; raise ValueError or OpenAIError if it did not.

    In Langfuse: select `ask-judge`. The form is in its metadata, as `response_format`.
    """
    told = "Judge the answer by the passages alone."
    form = f"Question: {answer.question}\nPassages: {answer.passages}\nAnswer: {answer.text}"
    response = client.chat.completions.parse(
        name="ask-judge",
        model=os.environ["OPENAI_MODEL"],
        messages=[{"role": "system", "content": told}, {"role": "user", "content": form}],
        response_format=Judgement,
        max_completion_tokens=max_tokens,
    )
    judgement = response.choices[0].message.parsed
    if judgement is None:
        raise ValueError("the judge refused")
    return judgement


@observe(name="judge-answer", as_type="evaluator", capture_input=False)
def judge_answer(client: OpenAI, answer: Answer, max_tokens: int = 500) -> dict[str, float]:
    """Score the trace of an answer by a model's judgement; return nothing if there is none.

    In Langfuse: set Name to `judge-answer` and Status to ERROR to see what was not judged.
    """
    langfuse = get_client()
    langfuse.update_current_span(input={"question": answer.question, "answer": answer.text})
    try:
        judgement = ask_judge(client, answer, max_tokens)
    except (openai.OpenAIError, ValueError) as error:
        message = f"no judgement: {type(error).__name__}"
        langfuse.update_current_span(level="ERROR", status_message=message)
        return {}
    for name, value in judgement:
        langfuse.create_score(name=name, value=value, trace_id=answer.trace_id)
    return judgement.model_dump()


# %% 4. Read the scores back
#
# An average hides the answers that went wrong, so ask for the lowest value as well.


def score_statistics(langfuse: Langfuse, tag: str) -> list[tuple[str, int, float, float]]:
    """Return name, count, average and lowest value of the scores on traces with this tag.

    In Langfuse: under Dashboards, chart Scores (numeric) by Name.
    """
    now, measures = datetime.now(UTC), [("count", "count"), ("value", "avg"), ("value", "min")]
    query = {
        "view": "scores-numeric",
        "dimensions": [{"field": "name"}],
        "metrics": [{"measure": what, "aggregation": how} for what, how in measures],
        "filters": [
            {"column": "tags", "operator": "any of", "value": [tag], "type": "arrayOptions"}
        ],
        "fromTimestamp": (now - timedelta(hours=1)).isoformat(),
        "toTimestamp": (now + timedelta(hours=1)).isoformat(),
    }
    rows = langfuse.api.metrics.metrics(query=json.dumps(query)).data
    return [(r["name"], int(r["count_count"]), r["avg_value"], r["min_value"]) for r in rows]


# %% 5. Turn bad answers into a dataset
#
# For each answer that was rated low, somebody writes down what a good one contains.

DATASET = "shop-questions"
EXPECTED = {  # what a good answer contains
    "Can I return shoes after 20 days?": "30 days",
    "When do I get the refund?": "5 working days",
    "What does express delivery cost?": "12 euros",
    "Is it offered to islands?": "not offered to islands",
    "How often do leather shoes need wax?": "once a month",
    "Do you repair bicycles?": "does not say",
}


def build_dataset(langfuse: Langfuse, sources: dict[str, str]) -> None:
    """Create or update the dataset; `sources` has the traces that questions come from.

    In Langfuse: open Datasets. An item with a source links to its trace.
    """
    langfuse.create_dataset(name=DATASET, description="Questions, and what an answer must contain")
    for number, (question, expected) in enumerate(EXPECTED.items(), 1):
        langfuse.create_dataset_item(
            dataset_name=DATASET,
            id=f"{DATASET}-{number:02}",
            input=question,
            expected_output=expected,
            source_trace_id=sources.get(question),
        )


# %% 6. Try a change on it before your users do
#
# A better average can hide a question that used to be answered, so the gate looks at each item.


def contains_expected(*, output: str, expected_output: str, **_: Any) -> Evaluation:
    """Score 1 if the answer contains what it must, else 0."""
    return Evaluation(name="correct", value=float(expected_output in output))


def try_prompt(langfuse: Langfuse, client: OpenAI, name: str, instruction: str) -> ExperimentResult:
    """Answer every question of the dataset with this prompt, and score the answers.

    In Langfuse: open the dataset, then Experiments; tick two of them and select Compare.
    """

    def answer(*, item: Any, **_: Any) -> str:
        return write_answer(client, instruction, item.input)[0]

    return langfuse.get_dataset(DATASET).run_experiment(
        name=f"{DATASET}-{name}", task=answer, evaluators=[contains_expected]
    )


def passed(result: ExperimentResult) -> set[str]:
    """Return the questions that were answered correctly; not one whose task failed."""
    results: list[Any] = list(result.item_results)
    return {each.item.input for each in results if any(found.value for found in each.evaluations)}


def refuse_regressions(before: ExperimentResult, after: ExperimentResult) -> None:
    """Raise RegressionError, which fails a check in CI, if an answer was right and no longer is."""
    lost = passed(before) - passed(after)
    if lost:
        raise RegressionError(result=after, metric="lost items", value=len(lost), threshold=0)


def main() -> None:
    """Run the sections in order; each ends with what was stored of it."""
    connect()
    langfuse, client, run = Langfuse(), OpenAI(), uuid.uuid4().hex[:8]
    show_section("1. Score what happened, where it happened")
    rated: list[tuple[Answer, int]] = []
    for user, turns in CONVERSATIONS.items():
        session_id = f"chat-{user}-{run}"
        with propagate_attributes(user_id=user, session_id=session_id, tags=[f"run:{run}"]):
            rated += [(answer_question(client, question), stars) for question, stars in turns]
        close_session(langfuse, session_id, [stars for _, stars in turns])
    for answer, _ in rated:
        show_answer(answer.question, answer.text)
    show_trace()
    show_section("2. Take feedback that comes later, and may change")
    for answer, stars in rated:
        now = datetime.now(UTC)
        rate_answer(langfuse, answer.trace_id, 3, now)
        rate_answer(langfuse, answer.trace_id, stars, now + timedelta(seconds=1))
        show_result(f"3 stars, then {stars}", answer.question)
    show_section("3. Let a model judge (the local model only counts shared words)")
    judged = {answer.question: judge_answer(client, answer) for answer, _ in rated}
    for question, judgement in judged.items():
        told = ", ".join(f"{name} {value:.2f}" for name, value in judgement.items())
        show_answer(question, told or "failed")
    judge_answer(client, rated[0][0], max_tokens=5)  # too few for an answer
    show_trace()
    if not tracing_is_on():
        show_result("4. to 6.", "skipped: with tracing off nothing is stored")
        return
    show_section("4. Read the scores back")
    sent = 2 * len(rated) + sum(map(len, judged.values()))
    with waiting("Waiting for the scores"):
        rows = poll(
            lambda: score_statistics(langfuse, f"run:{run}"),
            until=lambda rows: sum(count for _, count, *_ in rows) >= sent,
        )
    show_result("stored", f"{sum(count for _, count, *_ in rows)} of {sent} scores")
    for name, count, average, lowest in rows:
        show_result(name, f"{count} scores, {average:.2f} on average, the lowest {lowest:.2f}")
    show_section("5. Turn bad answers into a dataset")
    bad = {answer.question: answer.trace_id for answer, stars in rated if stars < 3}
    build_dataset(langfuse, bad)
    for question in bad:
        show_result("from a bad answer", f"{question} -> {EXPECTED[question]}")
    show_section("6. Try a change on it before your users do")
    before = try_prompt(langfuse, client, "baseline", BASELINE)
    after = try_prompt(langfuse, client, "candidate", CANDIDATE)
    show_result("right", f"{len(passed(before))} before, {len(passed(after))} after")
    for question in passed(before) ^ passed(after):
        show_result("better" if question in passed(after) else "worse", question)
    try:
        refuse_regressions(before, after)
    except RegressionError as error:
        fail(f"The gate refuses the new prompt: {error}", 1)
    show_result("The gate", "lets it pass: nothing that was right is wrong now")


if __name__ == "__main__":
    main()
