"""A canary in each place from which text can leave, looked for in every byte that was sent."""

import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from conftest import (
    KEYS,
    TOP,
    Desk,
    drawn_trees,
    promised_trees,
    stored_observations,
    stored_trees,
)
from langfuse.api.client import LangfuseAPI
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.trace import Status, StatusCode
from recording_proxy import Sent, proxy_to

import local_langfuse
from recipes import mask_and_sample as recipe

MODULE = ("-m", "recipes.mask_and_sample")
TESTS = Path(__file__).parent
RESOURCE = "ada.resource@example.com"
SECRET = "of the test alone"
# What Langfuse's own two hooks cannot reach: no attribute of a span, or no span at all.
BEYOND_THE_HOOKS = {
    *("name of a span", "name of a foreign span", "resource of the process"),
    *("exception in a decorated function", "exception in a block", "recorded exception"),
    *("error message", "foreign status", "name of a model"),
    *("name of an event", "attribute of an event", "attribute of a link"),
    *("text score", "comment of span.score", "comment of create_score", "metadata of a score"),
    *("session of a score", "input of a test case", "expected output of a test case"),
}
MODES = ("none", "langfuse", "gate")
Planted = dict[str, dict[str, str]]


@dataclass
class Run:
    """A process, all that it sent, and what is stored of it."""

    planted: Planted
    sent: list[Sent]
    stored: list[dict[str, Any]]

    @property
    def bytes(self) -> bytes:
        return b"\n".join(sent.everything for sent in self.sent)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> dict[str, Run]:
    desk = Desk(tmp_path_factory.mktemp("desk"), vocabulary)
    with ExitStack() as stack:
        clients = {mode: stack.enter_context(serving(desk.folder / f"{mode}.db")) for mode in MODES}
        proxies = {
            mode: stack.enter_context(proxy_to(str(client.base_url)))
            for mode, client in clients.items()
        }
        ran = desk.run(
            str(TESTS / "plant_canaries.py"),
            *(f"{mode}={proxy.url}" for mode, proxy in proxies.items()),
            LANGFUSE_PUBLIC_KEY=KEYS[0],
            LANGFUSE_SECRET_KEY=KEYS[1],
            PYTHONPATH=str(TOP),
            OTEL_RESOURCE_ATTRIBUTES=f"service.owner={RESOURCE}",
        )
        assert (ran.returncode, ran.stderr) == (0, "")
        planted = dict(re.findall(r"^(\w+)=(\{.*)", ran.stdout, re.MULTILINE))
        own = {"resource of the process": {"email": RESOURCE}}
        return {
            mode: Run(
                json.loads(planted[mode]) | own, proxies[mode].sent, stored_observations(client)
            )
            for mode, client in clients.items()
        }


@contextmanager
def serving(db: Path) -> Iterator[httpx.Client]:
    server = local_langfuse.start(db)
    with httpx.Client(base_url=server.base_url, auth=KEYS, trust_env=False) as client:
        yield client
    server.stop()


def leaks(run: Run) -> set[str]:
    """Return the places of which at least one canary was sent."""
    return {
        place
        for place, canaries in run.planted.items()
        if any(text.encode() in run.bytes for text in canaries.values())
    }


def test_without_a_gate_each_canary_leaves(runs: dict[str, Run]) -> None:
    run = runs["none"]
    assert len(run.planted) > 40
    for place, canaries in run.planted.items():
        for kind, text in canaries.items():
            assert text.encode() in run.bytes, (place, kind)


def test_through_the_gate_no_canary_leaves(runs: dict[str, Run]) -> None:
    run = runs["gate"]
    assert run.planted.keys() == runs["none"].planted.keys()
    assert [sent.method for sent in run.sent].count("POST") > 3
    assert leaks(run) == set()
    # Nor what is left of one that was found in part.
    assert re.findall(rb"ada\W|example\.com|411111|1234 0|canary[-.]|xn--", run.bytes) == []
    for sent in run.sent:  # the keys that sign the requests in stand in headers alone
        assert KEYS[1].encode() not in sent.body


def test_langfuse_s_own_hooks_do_not_reach_everything(runs: dict[str, Run]) -> None:
    assert leaks(runs["langfuse"]) == BEYOND_THE_HOOKS


def test_what_is_nested_too_deeply_is_withheld(runs: dict[str, Run]) -> None:
    [deep] = [row for row in runs["gate"].stored if row["name"] == "deep"]
    assert deep["input"] == recipe.WITHHELD


def test_where_the_masker_fails_everything_is_withheld(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(text: str, *_: Any) -> None:
        raise LookupError(text)

    monkeypatch.setattr(recipe, "mask", fail)
    texts: dict[str, Any] = {"Ada": "Ada"}
    tracer = TracerProvider(resource=Resource(texts)).get_tracer("library")
    with tracer.start_as_current_span("Ada", attributes=texts) as span:
        span.add_event("Ada", texts)
        span.add_link(span.get_span_context(), texts)
        span.set_status(Status(StatusCode.ERROR, "Ada"))
    assert isinstance(span, ReadableSpan)
    masked = recipe.masked_span(span)
    assert span.to_json().count("Ada") == 11
    assert "Ada" not in masked.to_json()
    assert masked.to_json().count(recipe.WITHHELD) == 11
    assert masked.context == span.context
    assert recipe.masked_body([{"comment": "Ada"}]) == [{recipe.WITHHELD: recipe.WITHHELD}]


def test_traces_stay_what_they_were(runs: dict[str, Run]) -> None:
    plain, masked = runs["none"].stored, runs["gate"].stored
    assert len(plain) == len(masked)
    for before, after in zip(plain, masked, strict=True):
        same = ("type", "level", "usageDetails", "costDetails", "totalCost", "isRootObservation")
        assert [before[key] for key in same] == [after[key] for key in same]
        assert before["metadata"].keys() >= {"scope.name"} <= after["metadata"].keys()
        assert is_json(before["input"]) == is_json(after["input"]) or after["name"] == "deep"
        assert is_json(before["output"]) == is_json(after["output"])
    [priced] = [row for row in masked if row["name"] == "write-answer"]
    assert priced["totalCost"] > 0
    assert priced["metadata"]["number"] == "[card]"
    assert priced["statusMessage"].startswith("[email] and [card] and [phone] and [key]")
    [call] = json.loads(priced["input"])[0]["tool_calls"]
    assert json.loads(call["arguments"])["to"].startswith("[email] and")
    users = {row["userId"] for row in masked}
    assert len(users) == 1
    assert re.fullmatch(r"anon-[0-9a-f]{16}", users.pop())


def is_json(text: str | None) -> bool:
    try:
        json.loads(text or "")
    except (ValueError, RecursionError):
        return False
    return True


@pytest.mark.parametrize(
    "text",
    [
        *("order A-1042", "1042-2231", "49.90", "1,234.50 euros", "10 000 000", "1.000.000,00"),
        *(
            "2026-11-20",
            "20.11.2026",
            "01-02-2026",
            "20/11/2026",
            "09:00:15",
            "2022 2023 2024 2025",
        ),
        "2026-11-20T18:19:30.706000+01:00",
        *("1763600000000", "1763600000000000", "1763600000000000000"),  # times in ms, µs, ns
        *("0.4111111111111111", "0.0000432", "1e-07", "192.168.100.200", "127.0.0.1:4747"),
        "4111 1111 1111 1112",  # its last digit is wrong
        "9111111111111111",  # no issuer's
        *("978-3-16-148410-0", "550e8400-e29b-41d4-a716-446655440000", "langfuse@5.0.4"),
        *("risk-adjusted", "task-management", "the bearer of news", "#100042", "+5 %"),
        '{"order": 1042, "price": 49.9, "cost": 0.4111111111111111, "at": 1763600000000}',
        '{"a":1,"a":2}',
    ],
)
def test_what_is_no_personal_data_stays(text: str) -> None:
    assert recipe.safe(text) == text
    assert recipe.safe({"key": [text]}) == {"key": [text]}


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Ada.B+shop@mail.example.co.uk, please", "[email], please"),
        ("?to=ada%40example.com&x=1", "?to=[email]&x=1"),
        ("378282246310005 or 3782 822463 10005", "[card] or [card]"),
        ("5555-5555-5555-4444", "[card]"),
        ("4222222222222", "[card]"),  # 13 digits
        ("6011000990139424", "[card]"),
        ("+49 (0)151 2345-678", "[phone]"),
        ("0049 151 2345678", "[phone]"),
        ("(030) 1234567, 06-12345678", "[phone], [phone]"),
        ("06 12 34 56 78 or 0612345678", "[phone] or [phone]"),
        ("(202) 555-0147 or 1-800-555-0199", "[phone] or [phone]"),
        ("Authorization: Bearer abc.def-ghi_jkl", "Authorization: Bearer [key]"),
        ("sk-proj-0123456789", "[key]"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.sig", "[key]"),
        ('{"a":"ada@example.com","a":1}', '{"a":"[email]","a":1}'),  # the first value is lost
        ('{"ada@example.com": {"n": 4111111111111111}}', '{"[email]": {"n": "[card]"}}'),
        ('"4111111111111111"', '"[card]"'),
        ('Answer: {"n": 4111111111111111}', 'Answer: {"n": [card]}'),
    ],
)
def test_finds_personal_data(text: str, masked: str) -> None:
    assert recipe.safe(text) == masked


def test_a_session_has_one_name_in_spans_and_scores() -> None:
    session = "chat-of-ada@example.com"
    in_a_span = recipe.masked_fields({"session.id": session})["session.id"]
    [score] = recipe.masked_body([{"sessionId": session, "value": 1}])
    assert score == {"sessionId": in_a_span, "value": 1}


def test_an_id_is_no_number() -> None:
    ids = {"id": "4111111111111111", "traceId": "07768711268b44052da133e7d46fe758"}
    assert recipe.masked_body([ids]) == [ids]
    assert recipe.safe(f"see {ids['traceId']}") == f"see {ids['traceId']}"
    assert recipe.masked_body({"id": "ada@example.com"}) == {"id": "[email]"}
    assert recipe.masked_body({"id": "4111-1111-1111-1111"}) == {"id": "[card]"}
    assert recipe.masked_body({"input": {"id": ids["id"]}}) == {"input": {"id": "[card]"}}


def test_what_has_no_text_is_withheld() -> None:
    assert recipe.safe([b"ada@example.com"]) == recipe.WITHHELD
    assert recipe.safe(object()) == recipe.WITHHELD
    assert recipe.safe([None, True, 1, 0.5]) == [None, True, 1, 0.5]


@dataclass
class Sampled:
    """The recipe as a reader runs it, and what is stored of it."""

    desk: Desk
    ran: subprocess.CompletedProcess[str]
    stored: list[dict[str, Any]]
    trees: list[Any]
    scores: list[dict[str, Any]]
    counted: dict[str, int]  # by environment, from before the question was asked


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Sampled:
    desk = Desk(tmp_path_factory.mktemp("sampled"), vocabulary)
    ran = desk.run(*MODULE, PSEUDONYM_KEY=SECRET)  # with the stand-in inside the process
    with serving(desk.db) as client:
        scores: list[dict[str, Any]] = []
        query: dict[str, Any] = {"fields": "details,subject", "limit": 100}
        while True:
            answer = client.get("/api/public/v3/scores", params=query).json()
            scores += answer["data"]
            if "cursor" not in answer["meta"]:
                break
            query["cursor"] = answer["meta"]["cursor"]
        trees = stored_trees(client)
        reader: Any = SimpleNamespace(
            api=LangfuseAPI(base_url=str(client.base_url), httpx_client=client)
        )
        counted = recipe.count_stored(
            reader, "observations", datetime.now(UTC) - timedelta(hours=1), 1
        )
        return Sampled(desk, ran, stored_observations(client), trees, scores, counted)


def test_shows_what_it_stored(sampled: Sampled) -> None:
    assert (sampled.ran.returncode, sampled.ran.stderr) == (0, "")
    [promised] = promised_trees((TOP / "recipes" / "mask_and_sample.py").read_text())
    assert drawn_trees(sampled.ran.stdout) == [promised]
    assert Counter(sampled.trees)[promised] == 1
    assert set(sampled.trees) == {promised, ("greet-visitor", "span", ())}
    link = sampled.ran.stdout.split()[-1]
    assert f":{sampled.desk.port}/project/local/traces/" in link
    shown = sampled.ran.stdout.split("How the question is stored")[1]
    for text in ("ada@", "4111 1111", "1234 5678", "sk-lf-0123"):
        assert text in sampled.ran.stdout
        assert text not in shown
        assert text not in json.dumps([sampled.stored, sampled.scores])


def test_a_user_keeps_the_pseudonym(sampled: Sampled, monkeypatch: pytest.MonkeyPatch) -> None:
    other = recipe.pseudonym("ada@example.com")
    monkeypatch.setattr(recipe, "PSEUDONYM_KEY", SECRET.encode())
    expected = recipe.pseudonym("ada@example.com")
    assert other != expected
    assert {row["userId"] for row in sampled.stored} == {"", expected}
    roots = [row for row in sampled.stored if row["isRootObservation"]]
    assert {root["parentObservationId"] for root in roots} == {None}
    assert expected in sampled.ran.stdout


def test_counts_what_sampling_left(sampled: Sampled) -> None:
    visits = [row for row in sampled.stored if row["name"] == "greet-visitor"]
    scored = [row for row in sampled.scores if row["name"] == "stayed"]
    assert sum(sampled.counted.values()) == len(visits)
    assert {row["subject"]["traceId"] for row in scored} == {row["traceId"] for row in visits}
    assert all(recipe.is_kept(row["traceId"], recipe.SAMPLE_RATE) for row in sampled.stored)
    for environment, made in recipe.VISITS.items():
        stored = sum(row["environment"] == environment for row in visits)
        assert 0 < stored < made
        assert stored == sum(row["environment"] == environment for row in scored)
        numbers = rf"{environment} +{made} +{stored} +{stored} +{stored * 4} ± \d+ "
        assert re.search(numbers, sampled.ran.stdout), (numbers, sampled.ran.stdout)
