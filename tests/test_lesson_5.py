"""What lesson 5 promises beyond running: read back from where it stored it."""

import re
from pathlib import Path

import pytest
from conftest import Desk, Ran, stored_observations

LESSON = "05_custom_metrics.py"


@pytest.fixture
def lesson() -> str:
    return LESSON


def test_scores_of_all_types_stand_where_they_belong_and_the_last_rating_counts(
    first_run: Ran,
) -> None:
    with first_run.desk.serving() as client:
        query = {"limit": "100", "fields": "details,subject", "environment": "development"}
        scores = client.get("/api/public/v3/scores", params=query).json()["data"]
    found = {(s["name"], s["dataType"], s["subject"]["kind"]) for s in scores}
    assert found == {
        ("answer-words", "NUMERIC", "observation"),
        ("answer-kind", "CATEGORICAL", "trace"),
        ("user-rating", "NUMERIC", "trace"),
        ("relevance", "NUMERIC", "trace"),
        ("faithfulness", "NUMERIC", "trace"),
        ("toxicity", "NUMERIC", "trace"),
        ("resolved", "BOOLEAN", "session"),
        ("note", "TEXT", "session"),
        ("correct", "NUMERIC", "observation"),
        ("accuracy", "NUMERIC", "experiment"),
    }
    ratings = [s["value"] for s in scores if s["name"] == "user-rating"]
    assert sorted(ratings) == [0, 0.25, 0.25, 0.75, 1, 1]


def test_what_the_judge_could_not_judge_is_a_failure_and_no_score(first_run: Ran) -> None:
    with first_run.desk.serving() as client:
        judged = [n for n in stored_observations(client) if n["name"] == "judge-answer"]
        scores = client.get("/api/public/v3/scores", params={"name": "relevance"}).json()["data"]
    failed = [n for n in judged if n["level"] == "ERROR"]
    assert (len(judged), len(failed), len(scores)) == (7, 1, 6)
    assert failed[0]["statusMessage"].startswith("no judgement: LengthFinishReasonError")


def test_the_gate_lets_a_better_prompt_pass_and_refuses_a_worse_one(
    first_run: Ran, tmp_path: Path
) -> None:
    swapped = (
        (
            'try_prompt(langfuse, client, "baseline", BASELINE)',
            'try_prompt(langfuse, client, "baseline", CANDIDATE)',
        ),
        (
            'try_prompt(langfuse, client, "candidate", CANDIDATE)',
            'try_prompt(langfuse, client, "candidate", BASELINE)',
        ),
    )
    worse = first_run.desk.copied_to(tmp_path).run_edited(LESSON, *swapped)
    assert first_run.process.returncode == 0
    assert worse.returncode == 1
    assert re.fullmatch(r"The gate refuses .* `accuracy`: 0\.\d+ .*\n", worse.stderr)


def test_a_prompt_that_fails_on_most_questions_does_not_pass_the_gate(desk: Desk) -> None:
    returns = "        return write_answer(client, instruction, item.input)\n"
    hard = "        if instruction == CANDIDATE and not item.input.startswith('Can I'):\n"
    fails = (returns, f"{hard}            raise LookupError('too hard')\n{returns}")
    ran = desk.run_edited(LESSON, fails)
    assert ran.returncode == 1
    assert "0.08 after" in ran.stdout
    assert "The gate refuses" in ran.stderr


def test_the_dataset_is_updated_and_each_run_is_an_experiment(
    second_run: Ran,
) -> None:
    with second_run.desk.serving() as client:
        [dataset] = client.get("/api/public/v2/datasets").json()["data"]
        items = client.get("/api/public/dataset-items", params={"limit": 100}).json()["data"]
        query = {"fromStartTime": "2020-01-01T00:00:00Z"}
        experiments = client.get("/api/public/experiments", params=query).json()["data"]
    assert dataset["name"] == "shop-questions"
    assert len(items) == 12
    assert len(experiments) == 4


def test_the_numbers_for_the_business_are_those_of_the_stored_scores(first_run: Ran) -> None:
    with first_run.desk.serving() as client:
        resolved = client.get("/api/public/v3/scores", params={"name": "resolved"}).json()["data"]
        spent = [n["totalCost"] for n in stored_observations(client) if n["sessionId"]]
    yes = sum(score["value"] for score in resolved)
    assert f"resolution rate      {yes} of {len(resolved)}" in first_run.process.stdout
    assert f"cost per resolved    ${sum(spent) / yes:.6f}" in first_run.process.stdout
