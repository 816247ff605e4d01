"""What lesson 3 promises beyond running: read back from where it stored it."""

import importlib
import re

import pytest
from conftest import Desk, Ran, stored_observations, stored_trees

rag = importlib.import_module("03_trace_rag_pipeline")
LESSON = "03_trace_rag_pipeline.py"


@pytest.fixture
def lesson() -> str:
    return LESSON


def test_without_a_copy_of_the_context_the_searches_lose_their_trace(desk: Desk) -> None:
    ran = desk.run_edited(
        LESSON,
        ("pool.submit(contextvars.copy_context().run, each, query)", "pool.submit(each, query)"),
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    with desk.serving() as client:
        shapes = stored_trees(client)
    orphans = [tree for tree in shapes if tree[0] in ("search-by-words", "search-by-meaning")]
    assert len(orphans) == 10, "each search of five questions is a trace of its own"
    answered = [tree for tree in shapes if tree[0] == "answer-from-handbook"]
    assert all(("find-passages", "retriever", ()) in tree[2] for tree in answered)


def test_the_prompt_is_created_once_and_linked_to_its_generation(
    second_run: Ran,
) -> None:
    with second_run.desk.serving() as client:
        [prompt] = client.get("/api/public/v2/prompts").json()["data"]
        assert (prompt["name"], prompt["versions"]) == ("answer-from-handbook", [1])
        written = [n for n in stored_observations(client) if n["name"] == "write-answer"]
        assert {(n["promptName"], n["promptVersion"]) for n in written} == {
            ("answer-from-handbook", 1)
        }


def test_only_the_step_that_failed_is_an_error(first_run: Ran) -> None:
    with first_run.desk.serving() as client:
        failed = [n for n in stored_observations(client) if n["level"] == "ERROR"]
    assert [n["name"] for n in failed] == ["search-archive"]
    assert failed[0]["statusMessage"] in first_run.process.stdout
    assert "cannot be searched at the moment" in first_run.process.stdout


def test_an_abstention_has_a_low_grounding_and_an_answer_a_high_one(first_run: Ran) -> None:
    with first_run.desk.serving() as client:
        scores = client.get("/api/public/v3/scores", params={"name": "grounding"}).json()["data"]
        roots = [n for n in stored_observations(client) if n["name"] == "answer-from-handbook"]
    assert sum("does not say" in n["output"] for n in roots) == 1
    assert sorted(score["value"] for score in scores) == [0, 1, 1, 1, 1]


def test_the_slowest_step_is_computed_from_what_is_stored(first_run: Ran) -> None:
    shown = re.findall(
        r"^  ([a-z-]+) +p95 ([\d,]+) ms$", first_run.process.stdout, flags=re.MULTILINE
    )
    milliseconds = [int(ms.replace(",", "")) for _, ms in shown]
    assert milliseconds == sorted(milliseconds, reverse=True)
    with first_run.desk.serving() as client:
        steps = [n for n in stored_observations(client) if n["sessionId"] and n["type"] != "CHAIN"]
    assert {name for name, _ in shown} == {n["name"] for n in steps}
    slowest = max(steps, key=lambda n: n["latency"] or 0)
    assert slowest["name"] in {name for name, _ in shown[:2]}


def test_the_searches_of_lesson_3_rank_what_was_asked_for() -> None:
    rankings = [["a", "b", "c"], ["b", "d", "a"]]
    assert rag.rank_passages.__wrapped__(rankings)[0] == "b"
