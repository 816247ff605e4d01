"""The report is what is stored: each number is computed here again from the rows."""

import math
import re
import statistics
import time
import uuid
from collections import defaultdict
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from conftest import TOP, Desk, Ran, free_port, promised_trees, stored_observations, stored_trees

from recipes import quality_report as recipe

RECIPE = ("-m", "recipes.quality_report")
SOURCE = "recipes/quality_report.py"
REFUSING = str(Path(__file__).parent / "refuse_sockets")
WANTED = dict(recipe.QUESTIONS)


class Store:
    """All rows that a desk has stored."""

    def __init__(self, client: httpx.Client) -> None:
        self.nodes = stored_observations(client)
        self.scores: list[dict[str, Any]] = []
        query: dict[str, str] = {"limit": "100", "fields": "details,subject"}
        while "cursor" not in query or query["cursor"]:
            page = client.get("/api/public/v3/scores", params=query).json()
            self.scores += page["data"]
            query["cursor"] = page["meta"].get("cursor") or ""

    def named(self, name: str) -> list[dict[str, Any]]:
        return [node for node in self.nodes if node["name"] == name]

    def values(self, name: str) -> dict[str, float]:
        """Return the value of each subject's score."""
        return {s["subject"]["id"]: s["value"] for s in self.scores if s["name"] == name}


def read(desk: Desk) -> Store:
    with desk.serving() as client:
        return Store(client)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Ran:
    """The recipe as a newcomer runs it: nothing is stored yet."""
    desk = Desk(tmp_path_factory.mktemp("quality"), vocabulary)
    return Ran(desk, desk.run(*RECIPE))


@pytest.fixture(scope="module")
def store(ran: Ran) -> Store:
    return read(ran.desk)


def report_of(output: str) -> str:
    return output[output.index("\n1. ") :]


def test_with_nothing_stored_it_makes_conversations_and_says_so(ran: Ran, store: Store) -> None:
    assert (ran.process.returncode, ran.process.stderr) == (0, "")
    assert "is stored: simulated customers ask.\n" in ran.process.stdout
    with ran.desk.serving() as client:
        trees = stored_trees(client)
    assert sorted(trees) == sorted(promised_trees((TOP / SOURCE).read_text()))
    roots = [node for node in store.nodes if node["isRootObservation"]]
    assert {node["parentObservationId"] for node in roots} == {None}, "scores are joined by it"
    answers = store.named("answer-question")
    assert all(node["tags"] == ["simulated"] and node["sessionId"] for node in answers)


def test_resolution_cost_and_ratings_are_those_of_the_stored_rows(ran: Ran, store: Store) -> None:
    resolved = store.values("resolved")
    assert {s["subject"]["kind"] for s in store.scores if s["name"] == "resolved"} == {"session"}
    spent = sum(
        n["costDetails"]["total"]
        for n in store.nodes
        if n["sessionId"] in resolved and n["type"] == "GENERATION"
    )
    yes, ratings = sum(resolved.values()), [*store.values("user-rating").values()]
    average = statistics.fmean(ratings)
    assert 0 < yes < len(resolved) == 10
    for words in (
        f"  resolved             {yes:g} of {len(resolved)} ({yes / len(resolved):.0%})\n",
        f"  cost per resolved    ${spent / yes:.6f}\n",
        f"  rating               {average:.3f} on average, from 0 to 1; 20 ratings, 20 by simul",
    ):
        assert words in ran.process.stdout
    days = defaultdict(list)
    for each in store.scores:
        if each["name"] == "user-rating":
            days[each["timestamp"][:10]].append(each["value"])
    day = re.compile(r"^  (\d{4}-\d\d-\d\d) +(\d+) ratings, ([\d.]+)", re.MULTILINE)
    shown = day.findall(ran.process.stdout)
    assert shown == [
        (d, str(len(v)), f"{statistics.fmean(v):.3f}") for d, v in sorted(days.items())
    ]


def test_each_customer_gets_one_version_and_every_answer_names_it(store: Store) -> None:
    versions: defaultdict[str, set[int]] = defaultdict(set)
    for call in store.named("write-answer"):
        assert call["promptName"] == recipe.PROMPT
        versions[call["userId"]].add(call["promptVersion"])
    number = {"production": 1, "candidate": 2}
    assert versions == {u: {number[recipe.label_for(u, recipe.PROMPT)]} for u in versions}
    assert set.union(*versions.values()) == {1, 2}
    assert len(versions) == len(recipe.CUSTOMERS)


def test_versions_are_compared_in_ratings_and_cost(ran: Ran, store: Store) -> None:
    ratings = store.values("user-rating")
    means = {}
    for number, label in ((1, "production"), (2, "candidate")):
        calls = [c for c in store.named("write-answer") if c["promptVersion"] == number]
        by_user = defaultdict(list)
        for call in calls:
            by_user[call["userId"]].append(ratings[call["traceId"]])
        means[number] = [statistics.fmean(each) for each in by_user.values()]
        usd = sum(call["costDetails"]["total"] for call in calls) / len(calls)
        row = (number, label, len(by_user), f"{statistics.fmean(means[number]):.3f}", len(calls))
        shown = " +".join(re.escape(str(cell)) for cell in (*row, f"${usd:.6f}"))
        assert re.search(rf"^  {shown} *$", ran.process.stdout, re.MULTILINE), shown
    error = sum(statistics.variance(each) / len(each) for each in means.values())
    change = statistics.fmean(means[2]) - statistics.fmean(means[1])
    said = f"  candidate            {change:+.2f} ± {2 * math.sqrt(error):.2f}, may be chance"
    assert said in ran.process.stdout


SWAPPED = """
from recipes import quality_report as r
r.CANDIDATE, r.PRODUCTION = r.PRODUCTION, r.CANDIDATE
r.main()
"""


def test_ratings_follow_the_answer_and_not_the_version(desk: Desk, store: Store) -> None:
    """With the texts of the versions swapped the same customers rate other answers otherwise."""
    assert desk.run("-c", SWAPPED.strip()).returncode == 0
    swapped, moved = read(desk), 0
    rated = [
        {
            (n["userId"], n["input"]): (n["output"], each.values("user-rating")[n["traceId"]])
            for n in each.named("answer-question")
        }
        for each in (store, swapped)
    ]
    assert rated[0].keys() == rated[1].keys()
    for (_, question), (answer, rating) in [*rated[0].items(), *rated[1].items()]:
        assert rating == (recipe.stars_for(answer, WANTED[question]) - 1) / 4
    for asked, (answer, rating) in rated[0].items():
        other, rating_then = rated[1][asked]
        assert (answer == other) <= (rating == rating_then)
        moved += rating != rating_then
    assert moved >= 4


@pytest.mark.parametrize(
    ("answer", "wanted", "stars"),
    [
        ("Two years.", "years", 5),
        (f"Two years.{' word' * 20}", "years", 4),
        ("The handbook does not say.", "years", 2),
        ("The handbook does not say.", "does not say", 5),
        ("Blue.", "years", 1),
    ],
)
def test_stars_are_for_what_was_wanted(answer: str, wanted: str, stars: int) -> None:
    assert recipe.stars_for(answer, wanted) == stars


def test_the_judge_saw_what_the_answer_had_outside_the_conversation(store: Store) -> None:
    labelled = store.values("reviewed-correct")
    asked = {n["traceId"]: n for n in store.named("answer-question")}
    found = {n["traceId"]: n["output"] for n in store.named("find-passages")}
    told = {n["traceId"]: n["input"] for n in store.named("write-answer")}
    forms = [n["input"] for n in store.named("judge-answer")]
    assert sorted(forms) == sorted(
        f"Question: {asked[t]['input']}\nContext: {found[t]}\nAnswer: {asked[t]['output']}"
        for t in labelled
    )
    assert all(found[t].splitlines()[0] in told[t] for t in labelled)
    of_judge = [n for n in store.nodes if n["name"] in ("judge-answer", "ask-judge")]
    assert not any(n["sessionId"] or n["userId"] or n["tags"] for n in of_judge)
    assert not {n["traceId"] for n in of_judge} & asked.keys()
    prompts = [n["input"] for n in store.named("ask-judge")]
    assert all(any("Context: " in p and q in p for p in prompts) for q in WANTED if q in str(forms))


def test_the_judges_agreement_with_people_and_each_disagreement(ran: Ran, store: Store) -> None:
    people, judge = store.values("reviewed-correct"), store.values("judged-correct")
    assert people.keys() == judge.keys()
    assert len(people) == 12
    same = [t for t in people if people[t] == judge[t]]
    wrong = [t for t in people if not people[t]]
    said = f"{len(same)} of 12 labels; it found {sum(not judge[t] for t in wrong)} of {len(wrong)} "
    assert said in ran.process.stdout
    asked = {n["traceId"]: n for n in store.named("answer-question")}
    words = {True: "right", False: "wrong"}
    rows = ran.process.stdout.split("they disagree on")[1].splitlines()[1:]
    shown = [re.split(r" {2,}", row.strip()) for row in rows if re.search("right|wrong", row)]
    expected = [
        (asked[t]["input"], words[bool(people[t])], words[bool(judge[t])])
        for t in people
        if t not in same
    ]
    assert sorted((row[0], *row[2:]) for row in shown) == sorted(expected)
    assert 0 < len(expected) < 12


def test_a_judgement_that_failed_is_no_label(desk: Desk) -> None:
    limit = "response_format=Judgement,\n            max_completion_tokens="
    cut_off = (f"{limit}500", f"{limit}2")
    (desk.folder / "recipes").mkdir()
    ran = desk.run_edited(SOURCE, cut_off)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "0 of 0 labels" in ran.stdout
    assert "  not judged           12 labels: the next run tries again\n" in ran.stdout
    store = read(desk)
    assert store.values("judged-correct") == {}
    assert {n["level"] for n in store.named("judge-answer")} == {"ERROR"}
    again = desk.run(*RECIPE)
    assert (again.returncode, len(read(desk).values("judged-correct"))) == (0, 12)


LATE = """
from recipes import quality_report as r
stored, waited = r.stored_scores, []
def late(*asked):
    found = stored(*asked)
    if found and len(waited) < 3:
        waited.append(asked)
        return found[3:]
    return found
r.stored_scores = late
r.main()
"""


def test_it_waits_for_every_score_and_gives_up_with_a_status(
    ran: Ran, desk: Desk, tmp_path: Path
) -> None:
    late = desk.run("-c", LATE.strip())
    assert (late.returncode, late.stderr) == (0, "")
    assert sorted(report_of(late.stdout)) == sorted(report_of(ran.process.stdout))
    (tmp_path / "never").mkdir()
    never = Desk(tmp_path / "never", desk.vocabulary)
    patient = "r.poll, poll = lambda *a, **k: poll(*a, **k, seconds=0.5), r.poll\nr.main()"
    code = LATE.strip().replace("< 3", "< 999").replace("r.main()", patient)
    lost = never.run("-c", code)
    assert lost.returncode == 2
    assert lost.stderr == "Cannot tell: 3 scores or answers of this run cannot be read back.\n"


def test_a_second_run_only_reads_and_limits_have_a_status(ran: Ran, tmp_path: Path) -> None:
    desk = ran.desk.copied_to(tmp_path)
    rating = statistics.fmean(read(desk).values("user-rating").values())
    with desk.serving() as client:
        before = Store(client)
        within = desk.run(*RECIPE, "--min-rating", f"{rating}", "--min-resolution", "0.5")
        below = desk.run(*RECIPE, "--min-rating", f"{rating + 0.001}", "--min-resolution", "0.51")
        after = Store(client)
    assert (within.returncode, within.stderr) == (0, "")
    assert report_of(within.stdout) == report_of(ran.process.stdout) + "Within the limits.\n"
    assert below.returncode == 1
    assert below.stderr == (
        f"Below the limit: rating {rating:.3f} (at least {rating + 0.001:g}), "
        "resolution 0.500 (at least 0.51).\n"
    )
    assert (len(after.nodes), len(after.scores)) == (len(before.nodes), len(before.scores))


def unpriced_span(**own: Any) -> dict[str, Any]:
    """Return an OTLP span of a call with tokens, and with a model that nobody has a price for."""
    now = f"{int(time.time())}000000000"
    own = {"model.name": "shop-topics", "usage_details": '{"input": 5}', **own}
    values = {
        key: {"intValue" if isinstance(v, int) else "stringValue": v} for key, v in own.items()
    }
    start = ("", "langfuse.observation.")
    return {
        "traceId": uuid.uuid4().hex,
        "spanId": uuid.uuid4().hex[:16],
        "name": "call-model",
        "startTimeUnixNano": now,
        "endTimeUnixNano": now,
        "attributes": [
            {"key": start[key != "session.id"] + key, "value": value}
            for key, value in values.items()
        ],
    }


def test_more_than_a_page_unknown_costs_and_real_customers(
    ran: Ran, store: Store, tmp_path: Path
) -> None:
    """Rows that other programs have stored: a call without a price, 130 closed conversations."""
    desk = ran.desk.copied_to(tmp_path)
    of_chat = {"type": "embedding", "session.id": store.named("write-answer")[0]["sessionId"]}
    of_version = {"type": "generation", "prompt.name": recipe.PROMPT, "prompt.version": 2}
    spans = [unpriced_span(**of_chat), unpriced_span(**of_version)]
    body = {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {}, "spans": spans}]}]}
    closed = [
        {"name": "resolved", "value": 1, "dataType": "BOOLEAN", "sessionId": f"s{n}", "id": f"s{n}"}
        for n in range(130)
    ]
    real = {"name": "user-rating", "value": 1, "dataType": "NUMERIC", "traceId": "a" * 32}
    words = {"name": "user-rating", "value": "fine", "dataType": "CATEGORICAL", "traceId": "b" * 32}
    with desk.serving() as client:
        client.post("/api/public/otel/v1/traces", json=body).raise_for_status()
        client.post("/api/public/scores", json=[*closed, real, words]).raise_for_status()
        again = desk.run(*RECIPE)
    assert (again.returncode, again.stderr) == (0, "")
    assert "  resolved             135 of 140 (96%)\n" in again.stdout
    assert "  cost per resolved    unknown: some of these calls have no price\n" in again.stdout
    assert "; 21 ratings, 20 by simulated customers\n" in again.stdout
    assert re.search(r"^  2 +candidate +6 +0\.792 +13 +unknown *$", again.stdout, re.MULTILINE)
    assert re.search(r"^  1 +production +.*\$0\.0000\d+ *$", again.stdout, re.MULTILINE)


def test_what_cannot_be_told_has_a_status_of_its_own(desk: Desk) -> None:
    nothing = desk.run(*RECIPE, "--min-rating", "0.1", "--min-resolution", "0.1")
    assert nothing.returncode == 2
    assert nothing.stderr == (
        "Cannot tell: no rating and no resolution is stored for the last 7 days. "
        "Without a limit, this makes simulated ones.\n"
    )
    assert read(desk).nodes == [], "a gate must not make its own good ratings"
    sampled = desk.run(*RECIPE, LANGFUSE_SAMPLE_RATE="0.5")
    assert sampled.returncode == 2
    assert sampled.stderr == "Cannot tell: nothing is stored. Set LANGFUSE_SAMPLE_RATE to 1.\n"
    keys = {"LANGFUSE_PUBLIC_KEY": "pk-lf-a", "LANGFUSE_SECRET_KEY": "sk-lf-a"}
    dead = desk.run(*RECIPE, **keys, LANGFUSE_BASE_URL=f"http://127.0.0.1:{free_port()}")
    assert dead.returncode == 2
    assert dead.stderr.startswith("Cannot tell: Langfuse cannot be read (")
    assert dead.stderr.count("\n") == 1


def test_without_tracing_it_cannot_tell(desk: Desk) -> None:
    off = {"LANGFUSE_TRACING_ENABLED": "false", "PYTHONPATH": REFUSING, "REFUSE_SOCKETS": "all"}
    ran = desk.run(*RECIPE, **off, REFUSED_SOCKETS_FILE=str(desk.folder / "refused"))
    assert ran.returncode == 2
    assert ran.stderr == "Cannot tell: tracing is off. Unset LANGFUSE_TRACING_ENABLED.\n"
    assert not (desk.folder / "refused").exists()


@pytest.mark.parametrize(
    "given", ["--days 0", "--days 400", "--min-rating 60", "--min-rating nan", "--min-resolution x"]
)
def test_a_wrong_option_is_said_in_one_line(
    given: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["quality_report", *given.split()])
    with pytest.raises(SystemExit) as end:
        recipe.read_options()
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


# Functions by themselves


def test_a_user_stays_in_a_group_on_every_server() -> None:
    """Fixed results, as every process must have them, and a share that is kept."""
    users = [f"user-{number}" for number in range(2000)]
    assert "".join(recipe.label_for(user, "a")[0] for user in users[:12]) == "pppppcccpccp"
    for share in (0.0, 0.1, 0.5, 1.0):
        got = [recipe.label_for(user, "a", share) for user in users].count("candidate")
        assert got == pytest.approx(2000 * share, abs=90 if 0 < share < 1 else 0)
    both = sum(recipe.label_for(u, "a") == recipe.label_for(u, "b") for u in users)
    assert both == pytest.approx(1000, abs=100), "another test draws other groups"


def call(cost: float | None, *, level: str = "DEFAULT", used: bool = True) -> Any:
    usage = {"input": 1} if used else {}
    costs = {} if cost is None else {"total": cost}
    made = {"cost_details": costs, "usage_details": usage, "level": level, "session_id": "s"}
    return SimpleNamespace(**made)


def test_a_cost_is_unknown_as_soon_as_one_call_has_none() -> None:
    assert recipe.total_cost([call(0.1), call(0.2)]) == Decimal("0.3")
    assert recipe.total_cost([call(0.1), call(None, level="ERROR", used=False)]) is not None
    assert recipe.total_cost([call(0.1), call(None)]) is None
    assert recipe.total_cost([call(0.1), call(None, level="ERROR")]) is None, "it used tokens"


def test_a_failed_conversation_is_paid_for_by_the_resolved_ones() -> None:
    calls = [call(0.1), call(0.2)]
    assert recipe.cost_per_resolved({"s": True, "t": True}, calls) == "$0.150000"
    said = recipe.cost_per_resolved({"s": False}, calls)
    assert said == "no conversation was resolved, for $0.300000"
    assert recipe.cost_per_resolved({"t": True}, calls) == "unknown: no call is stored"


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ([0.0, 0.1, 0.0, 0.1], [0.9, 1.0, 0.9, 1.0], "+0.90 ± 0.08, more than chance"),
        ([0.9, 1.0, 0.9, 1.0], [0.0, 0.1, 0.0, 0.1], "-0.90 ± 0.08, more than chance"),
        ([0.0, 1.0], [0.5, 1.0], "+0.25 ± 1.12, may be chance: ask more customers"),
        ([0.5], [0.5, 1.0], "too few customers to compare"),
        ([], [], "too few customers to compare"),
    ],
)
def test_a_difference_is_held_against_chance(
    before: list[float], after: list[float], said: str
) -> None:
    assert recipe.verdict(before, after) == said


def test_a_judge_that_always_says_yes_finds_nothing() -> None:
    people = {"a": 1.0, "b": 1.0, "c": 0.0, "d": 0.0}
    said, differ = recipe.agreement(people, {"a": 1.0, "b": 1.0, "c": 1.0})
    assert said == "2 of 3 labels; it found 0 of 1 wrong answers"
    assert differ == ["c"]


def test_a_label_at_a_step_is_one_of_its_trace() -> None:
    subjects = [
        {"kind": "observation", "id": "o", "trace_id": "t"},
        {"kind": "trace", "id": "u"},
        {"kind": "session", "id": "s"},
    ]
    scores = [SimpleNamespace(subject=SimpleNamespace(**each), value=True) for each in subjects]
    older = SimpleNamespace(subject=SimpleNamespace(kind="trace", id="t"), value=False)
    assert recipe.by_trace([*scores, older]) == {"t": 1.0, "u": 1.0}, "the newest is the first"
