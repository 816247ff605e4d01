"""What each lesson promises beyond running: read back from where it stored it."""

import importlib
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import TOP, Desk, Ran, stored_observations, stored_trees
from hostile_model import going_wrong

ONE, TWO, THREE, FOUR, FIVE = (
    pytest.mark.parametrize("lesson", [path.name]) for path in sorted(TOP.glob("0?_*.py"))
)


def observations_of(run: Ran) -> list[dict[str, Any]]:
    with run.desk.serving() as client:
        return stored_observations(client)


def scores_of(run: Ran, **query: str) -> list[dict[str, Any]]:
    with run.desk.serving() as client:
        asked = {"limit": "100", "fields": "details,subject", **query}
        scores: list[dict[str, Any]] = client.get("/api/public/v3/scores", params=asked).json()[
            "data"
        ]
        return scores


@ONE
def test_the_last_trace_is_the_one_that_is_read_back(lesson: str, first_run: Ran) -> None:
    *_, root, found, written = observations_of(first_run)
    shown = first_run.process.stdout.split("4. Read it back")[1]
    assert root["input"] == "Can I return shoes after 20 days?"
    for node in (root, found, written):
        assert re.search(rf"^  {node['name']} ", shown, flags=re.MULTILINE), lesson


MISTAKES = [  # of a model: the tool it asks for, its arguments, what is wrong with them
    ("look_up_order", '{"order_id": "A-1042"', "JSONDecodeError"),
    ("look_up_order", '{"id": "A-1042", "loud": true}', "TypeError"),
    ("look_up_order", "null", "TypeError"),
    ("delete_everything", "{}", "KeyError"),
]


@TWO
def test_a_tool_call_that_does_not_fit_is_an_error_that_the_model_reads(
    lesson: str, desk: Desk
) -> None:
    code = (
        "import importlib; from common.client import connect; connect();"
        "from langfuse import Langfuse, get_client; from langfuse.openai import OpenAI; Langfuse();"
        f"two = importlib.import_module({lesson.removesuffix('.py')!r});"
        f"[two.run_tool(name, said) for name, said, _ in {MISTAKES!r}];"
        "print(two.answer_with_tool(OpenAI(), 'Where is it?')); get_client().flush()"
    )
    with going_wrong("unknown tool") as url:
        ran = desk.run("-c", code, OPENAI_BASE_URL=url)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.endswith("Yes.\n")
    with desk.serving() as client:
        *_, agent, _, _, written = nodes = stored_observations(client)
    tools = [node for node in nodes if node["type"] == "TOOL"]
    expected = [*MISTAKES, MISTAKES[-1]]
    for tool, (name, _, error) in zip(tools, expected, strict=True):
        known = name.replace("_", "-") if name == "look_up_order" else "unknown-tool"
        assert (tool["name"], tool["level"]) == (known, "ERROR")
        assert tool["statusMessage"].startswith(error)
        assert error in json.loads(tool["output"])["error"]
    assert agent["level"] == "DEFAULT"
    assert "KeyError" in written["input"], "the model was given it to read"


@TWO
def test_the_filters_of_a_turn_are_stored(lesson: str, first_run: Ran) -> None:
    turn = observations_of(first_run)[-1]
    assert turn["userId"] == "customer-17", lesson
    given = {"flag_short_answers": "on", "variant": "b", "tier": "gold"}
    assert turn["metadata"].items() >= given.items()
    assert turn["tags"] == ["team:support", "channel:web"]


@THREE
def test_without_a_copy_of_the_context_the_searches_lose_their_trace(
    lesson: str, desk: Desk
) -> None:
    ran = desk.run_edited(
        lesson,
        ("pool.submit(contextvars.copy_context().run, each, query)", "pool.submit(each, query)"),
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    with desk.serving() as client:
        shapes = stored_trees(client)
    orphans = [tree for tree in shapes if tree[0] in ("search-by-words", "search-by-meaning")]
    assert len(orphans) == 6, "each search of three questions is a trace of its own"
    answered = [tree for tree in shapes if tree[0] == "answer-from-handbook"]
    assert all(("find-passages", "retriever", ()) in tree[2] for tree in answered)


@THREE
def test_the_prompt_is_created_once_with_its_config_and_linked(
    lesson: str, second_run: Ran
) -> None:
    with second_run.desk.serving() as client:
        [prompt] = client.get("/api/public/v2/prompts").json()["data"]
        nodes = stored_observations(client)
    assert (prompt["versions"], prompt["lastConfig"]["model"]) == ([1, 2], "gpt-6-luna"), lesson
    written = [n for n in nodes if n["name"] == "write-answer"]
    assert {(n["promptName"], n["promptVersion"]) for n in written} == {("answer-from-handbook", 1)}


@THREE
def test_another_model_gets_versions_of_its_own(
    lesson: str, first_run: Ran, tmp_path: Path
) -> None:
    desk = first_run.desk.copied_to(tmp_path)
    ran = desk.run(lesson, OPENAI_MODEL="gpt-6-sol")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "version 3, {'model': 'gpt-6-sol'" in ran.stdout


@THREE
def test_the_lesson_names_the_step_that_failed_and_the_one_that_lost_the_fact(
    lesson: str, first_run: Ran
) -> None:
    failed = [node for node in observations_of(first_run) if node["level"] == "ERROR"]
    assert [node["name"] for node in failed] == ["search-archive"], lesson
    output = first_run.process.stdout
    assert f"search-archive       ERROR: {failed[0]['statusMessage']}" in output
    saying = "find-passages, search-by-words, search-by-meaning, rank-passages"
    assert f'Says "12 euros"      {saying}' in output
    assert "The model was given the fact and left it out" in output
    scores = {score["value"] for score in scores_of(first_run, name="grounding")}
    assert {f"grounding {value:.2f}" for value in scores} == set(
        re.findall(r"grounding \d\.\d\d", output)
    )


@THREE
def test_blame_follows_the_fact(lesson: str) -> None:
    blame = importlib.import_module(lesson.removesuffix(".py")).blame
    steps = ["find-passages", "rank-passages", "write-answer"]
    said = [blame(steps[:count]) for count in range(4)]
    assert [words.split()[0] for words in said] == ["No", "The", "The", "The"]
    assert "ranking dropped it" in said[1]
    assert "model was given" in said[2]
    assert "nothing to fix" in said[3]


@FOUR
def test_the_report_is_what_the_stored_calls_add_up_to(lesson: str, first_run: Ran) -> None:
    nodes = [node for node in observations_of(first_run) if "run" in node["metadata"]]
    calls = [node for node in nodes if node["type"] == "GENERATION"]
    output = first_run.process.stdout
    assert f"{len(nodes)} of {len(nodes)} observations" in output, lesson
    for call in calls:
        call["team"] = call["tags"][0]
    for kind in ("userId", "team", "model"):
        for owner in {call[kind] for call in calls}:
            own = [call for call in calls if call[kind] == owner]
            usd = sum(call["totalCost"] for call in own)
            shown = re.search(rf"^  {owner} +(\d+) +(\S+)", output, flags=re.MULTILINE)
            assert shown, owner
            assert int(shown[1]) == len(own)
            assert shown[2] == (f"${usd:.6f}" if usd else "no")
    assert "(no " not in output, "every call has an owner"
    unpriced = [call for call in calls if not call["costDetails"] and call["level"] != "ERROR"]
    assert f"{len(unpriced)} calls of shop-topics, which no sum includes" in output
    failed = sum(call["level"] == "ERROR" for call in calls)
    assert f"ERROR                {failed} of the calls" in output


@FOUR
def test_buckets_are_stored_as_shown_and_one_of_them_has_no_price(
    lesson: str, first_run: Ran
) -> None:
    shown = re.findall(
        r"^  (\w+) +(\d+) +([\d.]+|no price) *$", first_run.process.stdout, re.MULTILINE
    )
    names = {name for name, *_ in shown}
    assert names >= {"input_cache_write_tokens", "input_cached_tokens", "output_reasoning_tokens"}
    priced = [usd for name, tokens, usd in shown if (name, tokens) == ("input", "7")]
    assert priced == ["no price", "0.00000280"], lesson
    assert [usd for name, tokens, usd in shown if (name, tokens) == ("output", "1")] == [
        "no price",
        "no price",
    ]


@FOUR
def test_a_price_is_set_once(lesson: str, second_run: Ran) -> None:
    with second_run.desk.serving() as client:
        first = client.get("/api/public/models", params={"limit": 100}).json()
        pages = range(1, first["meta"]["totalPages"] + 1)
        asked = [{"limit": 100, "page": page} for page in pages]
        models = [client.get("/api/public/models", params=each).json()["data"] for each in asked]
    own = [m for page in models for m in page if m["modelName"] == "shop-topics-2"]
    assert len(own) == 1, lesson


@FOUR
def test_a_refusal_is_traced_on_the_step_that_refused(lesson: str, first_run: Ran) -> None:
    nodes = observations_of(first_run)
    [refused] = [n for n in nodes if n["name"] == "check-budget" and n["level"] == "ERROR"]
    assert re.search(r"gus-\w+ has spent .* may cost", refused["statusMessage"]), lesson
    names = [node["name"] for node in nodes if node["traceId"] == refused["traceId"]]
    assert names == ["answer-within-budget", "check-budget"]


@FIVE
def test_scores_of_all_types_are_where_they_belong_and_the_last_rating_counts(
    lesson: str, first_run: Ran
) -> None:
    scores = scores_of(first_run, environment="development")
    assert {(s["name"], s["dataType"], s["subject"]["kind"]) for s in scores} == {
        ("answer-words", "NUMERIC", "observation"),
        ("answer-kind", "CATEGORICAL", "trace"),
        ("user-rating", "NUMERIC", "trace"),
        ("relevance", "NUMERIC", "trace"),
        ("faithfulness", "NUMERIC", "trace"),
        ("resolved", "BOOLEAN", "session"),
        ("note", "TEXT", "session"),
        ("correct", "NUMERIC", "observation"),
    }, lesson
    ratings = [score["value"] for score in scores if score["name"] == "user-rating"]
    assert sorted(ratings) == [0, 0.25, 0.5, 0.75, 1, 1]
    mean = sum(ratings) / len(ratings)
    assert f"6 scores, {mean:.2f} on average, the lowest 0.00" in first_run.process.stdout


@FIVE
def test_the_judge_sees_what_the_answer_saw_outside_the_session(
    lesson: str, first_run: Ran
) -> None:
    nodes = observations_of(first_run)
    wrote = [n for n in nodes if n["name"] == "write-answer" and n["sessionId"]]
    asked = [n for n in nodes if n["name"] == "ask-judge"]
    assert len(asked) == len(wrote) + 1, "one more, cut off"
    for answer, judge in zip(wrote, asked, strict=False):
        passages = json.loads(answer["input"])[0]["content"].split("\n", 2)[2]
        assert passages in json.loads(judge["input"])[1]["content"], lesson
        assert not judge["sessionId"]
    [failed] = [n for n in nodes if n["name"] == "judge-answer" and n["level"] == "ERROR"]
    assert failed["statusMessage"].startswith("no judgement: LengthFinishReasonError")
    assert len(scores_of(first_run, name="relevance")) == len(wrote)


@FIVE
def test_bad_answers_become_items_that_the_next_run_updates(lesson: str, second_run: Ran) -> None:
    with second_run.desk.serving() as client:
        items = client.get("/api/public/dataset-items", params={"limit": 100}).json()["data"]
        query = {"fromStartTime": "2020-01-01T00:00:00Z"}
        experiments = client.get("/api/public/experiments", params=query).json()["data"]
        nodes = stored_observations(client)
    sources = {item["sourceTraceId"]: item["input"] for item in items if item["sourceTraceId"]}
    answered = {n["traceId"]: n["input"] for n in nodes if n["name"] == "answer-question"}
    assert (len(items), len(sources), len(experiments)) == (6, 2, 4), lesson
    assert sources.items() <= answered.items()


@FIVE
def test_the_gate_refuses_a_prompt_that_loses_an_item(
    lesson: str, first_run: Ran, tmp_path: Path
) -> None:
    assert "right                4 before, 5 after" in first_run.process.stdout
    assert "lets it pass" in first_run.process.stdout
    desk = first_run.desk.copied_to(tmp_path)
    swapped = (
        ("Answer in one sentence", "Answer in two sentences"),
        ('"one sentence", "two sentences"', '"two sentences", "one sentence"'),
    )
    ran = desk.run_edited(lesson, *swapped)
    assert ran.returncode == 1
    assert re.fullmatch(r"The gate refuses the new prompt: .*`lost items`.*\n", ran.stderr)


@FIVE
def test_an_item_whose_task_fails_is_lost_though_others_get_better(lesson: str, desk: Desk) -> None:
    returns = "        return write_answer(client, instruction, item.input)[0]\n"
    hard = "        if instruction == CANDIDATE and 'wax' in item.input:\n"
    ran = desk.run_edited(lesson, (returns, f"{hard}            raise LookupError\n{returns}"))
    assert ran.returncode == 1
    assert "better" in ran.stdout
    assert re.search(r"worse +How often do leather shoes need wax\?", ran.stdout)
    assert "The gate refuses" in ran.stderr


@FIVE
def test_a_rating_carries_the_time_of_the_click_by_which_the_later_one_wins(lesson: str) -> None:
    sent: list[dict[str, Any]] = []
    langfuse = SimpleNamespace(create_score=lambda **score: sent.append(score))
    rate = importlib.import_module(lesson.removesuffix(".py")).rate_answer
    clicks = [datetime(2026, 11, 28, 9, 0, second, tzinfo=UTC) for second in (1, 2)]
    for stars, clicked_at in zip((3, 5), clicks, strict=True):
        rate(langfuse, "trace", stars, clicked_at)
    assert [score["timestamp"] for score in sent] == clicks
    assert [score["value"] for score in sent] == [0.5, 1]
    assert len({(score["score_id"], score["name"]) for score in sent}) == 1, "the same score"
