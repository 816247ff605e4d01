"""The report is what is stored: each number is computed here again from the rows."""

import json
import re
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from conftest import TOP, Desk, Ran, free_port, promised_trees, stored_observations, stored_trees

from recipes import quality_report as recipe

RECIPE = ("-m", "recipes.quality_report")
SOURCE = TOP / "recipes/quality_report.py"
REFUSING = str(Path(__file__).parent / "refuse_sockets")


class Store:
    """All rows that a desk has stored."""

    def __init__(self, client: httpx.Client) -> None:
        self.nodes = stored_observations(client)
        page = client.get("/api/public/v3/scores?limit=100&fields=subject").json()
        assert not page["meta"].get("cursor"), "one page is enough for one run"
        self.scores = page["data"]

    def named(self, name: str) -> list[dict[str, Any]]:
        return [node for node in self.nodes if node["name"] == name]

    def values(self, name: str) -> dict[str, float]:
        return {s["subject"]["id"]: s["value"] for s in self.scores if s["name"] == name}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Ran:
    """The recipe as a newcomer runs it."""
    desk = Desk(tmp_path_factory.mktemp("quality"), vocabulary)
    return Ran(desk, desk.run(*RECIPE))


@pytest.fixture(scope="module")
def store(ran: Ran) -> Store:
    with ran.desk.serving() as client:
        return Store(client)


def report_of(output: str) -> list[str]:
    return sorted(output[output.index("\n1. ") :].splitlines())  # some are sorted by random ids


def test_it_leaves_the_trees_that_it_promises(ran: Ran, store: Store) -> None:
    assert (ran.process.returncode, ran.process.stderr) == (0, "")
    with ran.desk.serving() as client:
        assert sorted(stored_trees(client)) == sorted(promised_trees(SOURCE.read_text()))
    roots = [node for node in store.nodes if node["isRootObservation"]]
    assert {node["parentObservationId"] for node in roots} == {None}, "scores are joined by it"
    assert all(n["tags"] == ["simulated"] for n in store.named("answer-question"))


def test_resolution_cost_and_ratings_are_those_of_the_stored_rows(ran: Ran, store: Store) -> None:
    resolved, answers = store.values("resolved"), store.named("write-answer")
    assert {s["subject"]["kind"] for s in store.scores if s["name"] == "resolved"} == {"session"}
    spent = sum(n["costDetails"]["total"] for n in answers if n["sessionId"] in resolved)
    yes = sum(resolved.values())
    assert 0 < yes < len(resolved) == 10
    days = defaultdict(list)
    for each in store.scores:
        if each["name"] == "user-rating":
            days[each["timestamp"][:10]].append(each["value"])
    for words in (
        f"  resolved             {yes:g} of 10 conversations\n",
        f"  cost per resolved    ${spent / yes:.6f}\n",
        *(f"  rating {day}    {fmean(v):.3f} on average, from 0 to 1\n" for day, v in days.items()),
    ):
        assert words in ran.process.stdout


def test_each_customer_gets_one_version_and_every_answer_names_it(store: Store) -> None:
    versions: defaultdict[str, set[int]] = defaultdict(set)
    for call in store.named("write-answer"):
        assert call["promptName"] == recipe.PROMPT
        versions[call["userId"]].add(call["promptVersion"])
    number = {"production": 1, "candidate": 2}
    assert versions == {u: {number[recipe.label_for(u)]} for u in recipe.CUSTOMERS}
    assert set.union(*versions.values()) == {1, 2}


def test_versions_are_compared_in_ratings_and_cost(ran: Ran, store: Store) -> None:
    ratings = store.values("user-rating")
    for number in (1, 2):
        calls = [c for c in store.named("write-answer") if c["promptVersion"] == number]
        by_user = defaultdict(list)
        for call in calls:
            by_user[call["userId"]].append(ratings[call["traceId"]])
        usd = sum(call["costDetails"]["total"] for call in calls) / len(calls)
        row = (number, len(by_user), f"{fmean(map(fmean, by_user.values())):.3f}", len(calls))
        shown = " +".join(re.escape(str(cell)) for cell in (*row, f"${usd:.6f}"))
        assert re.search(rf"^ +{shown} *$", ran.process.stdout, re.MULTILINE), shown


def test_ratings_follow_the_answer_and_not_the_version(store: Store) -> None:
    rated, labelled = store.values("user-rating"), store.values("reviewed-correct")
    for node in store.named("answer-question"):
        trace, right = node["traceId"], recipe.QUESTIONS[node["input"]] in node["output"]
        liked = 1 if right else 0.25 if "does not say" in node["output"] else 0
        assert (rated[trace], labelled[trace]) == (liked, right)
    assert len({*rated.values()}) > 1


def test_the_judge_saw_what_the_answer_had_and_each_disagreement_is_named(
    ran: Ran, store: Store
) -> None:
    asked = {n["traceId"]: n for n in store.named("answer-question")}
    forms = [n["input"] for n in store.named("judge-answer")]
    for call in store.named("write-answer"):
        told, question = (json.loads(call["input"])[i]["content"] for i in (0, -1))
        answer = asked[call["traceId"]]["output"]
        assert (
            f"Judge the answer.\nQuestion: {question}\nContext: {told}\nAnswer: {answer}" in forms
        )
        assert question == asked[call["traceId"]]["input"]
    of_judge = [n for n in store.nodes if n["name"] in ("judge-answer", "ask-judge")]
    assert not any(n["sessionId"] or n["userId"] or n["tags"] for n in of_judge)
    people, judge = store.values("reviewed-correct"), store.values("judged-correct")
    assert people.keys() == judge.keys() == asked.keys()
    differ = [t for t in people if people[t] != judge[t]]
    assert 0 < len(differ) < 20
    assert f"they agree on        {20 - len(differ)} of 20 labelled" in ran.process.stdout
    rows = ran.process.stdout.split("they disagree on")[1].splitlines()[1:]
    shown = [re.split(r" {2,}", row.strip()) for row in rows if row[2:3].strip()]
    expected = [(asked[t]["input"], "yes" if people[t] else "no") for t in differ]
    assert sorted((row[0], row[-1]) for row in shown) == sorted(expected)


LATE = """
import functools
from recipes import quality_report as r
read, asked = r.ask_scores, []
def late(*args):
    asked.append(args)
    found = read(*args)
    return dict([*found.items()][3:]) if len(asked) < 5 else found
r.ask_scores, r.poll = late, functools.partial(r.poll, seconds=2)
r.main()
"""


def test_it_waits_for_every_score_and_gives_up_with_a_status(ran: Ran, desk: Desk) -> None:
    late = desk.run("-c", LATE)
    assert (late.returncode, late.stderr) == (0, "")
    assert report_of(late.stdout) == report_of(ran.process.stdout)
    lost = desk.run("-c", LATE.replace("< 5", "< 999"))
    assert lost.returncode == 2
    assert re.fullmatch(r"Cannot tell: \d+ answers or scores cannot be .+\.\n", lost.stderr)


def test_with_a_limit_it_only_reads_and_says_by_its_status(
    ran: Ran, store: Store, tmp_path: Path
) -> None:
    desk = ran.desk.copied_to(tmp_path)
    rating = fmean(store.values("user-rating").values())
    share = fmean(store.values("resolved").values())
    elsewhere = {"name": "resolved", "value": 1, "dataType": "BOOLEAN", "sessionId": "elsewhere"}
    with desk.serving() as client:
        within = desk.run(*RECIPE, "--min-rating", f"{rating}", "--min-resolution", f"{share}")
        low = desk.run(*RECIPE, "--min-rating", f"{rating + 0.001}", OPENAI_API_KEY="none")
        after = Store(client)
        client.post("/api/public/scores", json=elsewhere).raise_for_status()
        few = desk.run(*RECIPE, "--min-rating", "0", "--min-resolution", "0.9")
    assert (within.returncode, within.stderr) == (0, "")
    said = [line for line in report_of(within.stdout) if "Within the limit" not in line]
    assert said == report_of(ran.process.stdout)
    assert (low.returncode, few.returncode) == (1, 1)
    assert low.stderr == f"Below the limit: {rating:.3f}, and min_rating is {rating + 0.001:g}.\n"
    share = (10 * share + 1) / 11
    assert few.stderr == f"Below the limit: {share:.3f}, and min_resolution is 0.9.\n"
    assert "  cost per resolved    unknown\n" in few.stdout, "of one session no call is stored"
    assert (len(after.nodes), len(after.scores)) == (len(store.nodes), len(store.scores))


def test_what_cannot_be_told_has_a_status_of_its_own(desk: Desk) -> None:
    nothing = desk.run(*RECIPE, "--min-resolution", "0")
    assert nothing.returncode == 2
    assert nothing.stderr == "Cannot tell: nothing is stored that --min-resolution needs.\n"
    assert "  cost per resolved    unknown\n" in nothing.stdout
    with desk.serving() as client:
        assert stored_observations(client) == [], "a gate must not make its own good ratings"
    keys = {"LANGFUSE_PUBLIC_KEY": "pk-lf-a", "LANGFUSE_SECRET_KEY": "sk-lf-a"}
    url = f"http://127.0.0.1:{free_port()}"
    dead = desk.run(*RECIPE, "--min-rating", "0", **keys, LANGFUSE_BASE_URL=url)
    assert (dead.returncode, dead.stderr.count("\n")) == (2, 1)
    assert dead.stderr.startswith("Cannot tell: Langfuse cannot be reached (")
    off = {"LANGFUSE_TRACING_ENABLED": "false", "PYTHONPATH": REFUSING, "REFUSE_SOCKETS": "all"}
    ran = desk.run(*RECIPE, **off, REFUSED_SOCKETS_FILE=str(desk.folder / "refused"))
    assert (ran.returncode, ran.stderr) == (2, "Cannot tell: tracing is off.\n")
    assert not (desk.folder / "refused").exists()


def call(cost: float | None, *, level: str = "DEFAULT", used: bool = True) -> Any:
    costs = {} if cost is None else {"total": cost}
    return SimpleNamespace(cost_details=costs, usage_details=used and {"input": 1}, level=level)


def test_a_cost_is_unknown_as_soon_as_one_call_has_none() -> None:
    assert recipe.cost_of_all([call(0.1), call(0.2)], 2) == "$0.150000"
    failed = call(None, level="ERROR", used=False)
    assert recipe.cost_of_all([call(0.1), failed], 1) == "$0.100000", "it cost nothing"
    for calls in ([call(0.1), call(None)], [call(0.1), call(None, level="ERROR")], []):
        assert recipe.cost_of_all(calls, 1) == "unknown"
    assert recipe.cost_of_all([call(0.1)], 0) == "unknown", "nothing was resolved"


def test_a_user_stays_in_a_group_on_every_server() -> None:
    got = [recipe.label_for(f"user-{number}")[0] for number in range(2000)]
    assert "".join(got[:12]) == "ccccpccpcpcp"
    assert got.count("c") == pytest.approx(1000, abs=90)
