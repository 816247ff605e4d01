"""Datasets, experiments and deletions of `local_langfuse`, through the SDK and under bad input."""

import json
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from conftest import KEYS, client_of
from langfuse import Evaluation, Langfuse
from langfuse._client.resource_manager import LangfuseResourceManager
from langfuse.api import NotFoundError
from langfuse.experiment import LocalExperimentItem
from langfuse.model import ChatPromptClient
from opentelemetry.sdk.trace import TracerProvider
from test_local_langfuse import (
    READ_SCORES,
    SCORES,
    score,
    send,
    span,
    stored,
)

import local_langfuse

DATASETS = "/api/public/v2/datasets"
ITEMS = "/api/public/dataset-items"
EXPERIMENTS = "/api/public/experiments"
EXPERIMENT_ITEMS = "/api/public/experiment-items"
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
SINCE = {"fromStartTime": "2020-01-01T00:00:00Z"}


@pytest.fixture(scope="module")
def langfuse(server: tuple[str, Path]) -> Iterator[Langfuse]:
    LangfuseResourceManager.reset()  # a client that another test made would be used instead
    yield Langfuse(
        public_key=KEYS[0],
        secret_key=KEYS[1],
        base_url=server[0],
        tracer_provider=TracerProvider(),
    )
    LangfuseResourceManager.reset()


# Through the SDK

PLAIN: list[LocalExperimentItem] = [{"input": 1}, {"input": 2}]


def test_the_sdk_creates_reads_caches_and_relabels_prompts(
    langfuse: Langfuse, client: httpx.Client
) -> None:
    name = "shop/answer question"
    langfuse.create_prompt(name=name, prompt="Answer {{question}}", labels=["production"])
    langfuse.create_prompt(name=name, prompt="Shortly: {{question}}", tags=["support"])
    first = langfuse.get_prompt(name, cache_ttl_seconds=3600)
    assert (first.version, first.compile(question="why?")) == (1, "Answer why?")
    assert langfuse.get_prompt(name, version=2).tags == ["support"]
    assert langfuse.get_prompt(name, label="latest").version == 2
    langfuse.update_prompt(name=name, version=2, new_labels=["production"])
    assert langfuse.get_prompt(name, cache_ttl_seconds=0).version == 2
    with langfuse.start_as_current_observation(name="write-answer", as_type="generation") as one:
        one.update(prompt=langfuse.get_prompt(name))
    langfuse.flush()
    answer = client.get("/api/public/v2/observations", params={"fields": "prompt"})
    (row,) = answer.json()["data"]
    assert (row["promptName"], row["promptVersion"]) == (name, 2)
    assert [meta.versions for meta in langfuse.api.prompts.list(name=name).data] == [[1, 2]]
    langfuse.api.prompts.delete(quote(name, safe=""))
    with pytest.raises(NotFoundError):
        langfuse.get_prompt(name, cache_ttl_seconds=0, max_retries=0)


def test_the_sdk_reads_a_cached_prompt_without_asking_again(langfuse: Langfuse) -> None:
    langfuse.create_prompt(name="cached", prompt="one", labels=["production"])
    assert langfuse.get_prompt("cached", cache_ttl_seconds=3600).version == 1
    langfuse.api.prompts.delete("cached")
    assert langfuse.get_prompt("cached", cache_ttl_seconds=3600).version == 1


def test_the_sdk_fills_the_placeholders_of_a_chat_prompt(langfuse: Langfuse) -> None:
    langfuse.create_prompt(
        name="chat",
        type="chat",
        prompt=[
            {"role": "system", "content": "Be {{tone}}"},
            {"type": "placeholder", "name": "history"},
        ],
        labels=["production"],
    )
    prompt = langfuse.get_prompt("chat", type="chat")
    assert isinstance(prompt, ChatPromptClient)
    history = [{"role": "user", "content": "Hi"}]
    assert prompt.compile(tone="kind", history=history) == [
        {"role": "system", "content": "Be kind"},
        {"role": "user", "content": "Hi"},
    ]


def test_the_sdk_runs_an_experiment_and_reads_it_back(
    langfuse: Langfuse, client: httpx.Client
) -> None:
    name = "golden questions/shop"
    langfuse.create_dataset(name=name, description="Known answers", metadata={"owner": "support"})
    for number in range(60):  # more than one page of items
        langfuse.create_dataset_item(
            dataset_name=name, id=f"item-{number}", input={"n": number}, expected_output=number * 2
        )
    langfuse.create_dataset_item(dataset_name=name, id="item-0", expected_output="changed")
    dataset = langfuse.get_dataset(name)
    assert len(dataset.items) == 60
    zero = next(item for item in dataset.items if item.id == "item-0")
    assert (zero.input, zero.expected_output) == ({"n": 0}, "changed")

    def is_right(*, output: Any, expected_output: Any, **_: Any) -> Evaluation:
        return Evaluation(name="correct", value=float(output == expected_output))

    def accuracy(*, item_results: list[Any], **_: Any) -> Evaluation:
        values = [result.evaluations[0].value for result in item_results]
        return Evaluation(name="accuracy", value=sum(values) / len(values))

    result = dataset.run_experiment(
        name="doubling",
        run_name="v1",
        metadata={"prompt": "v1"},
        task=lambda *, item, **_: item.input["n"] * 2,
        evaluators=[is_right],
        run_evaluators=[accuracy],
    )
    assert "accuracy: 0.983" in result.format()
    assert result.experiment_url is not None
    langfuse.flush()
    (found,) = langfuse.api.experiments.list(
        from_start_time=LONG_AGO, fields="core,metadata,scores"
    ).data
    assert (found.id, found.name, found.item_count) == (result.experiment_id, "v1", 60)
    assert (found.dataset_id, found.metadata) == (dataset.id, {"prompt": "v1"})
    assert found.scores is not None
    assert [s.value for s in found.scores] == [pytest.approx(59 / 60)]
    items = []
    cursor = None
    while True:
        page = langfuse.api.experiments.list_items(
            from_start_time=LONG_AGO,
            experiment_id=result.experiment_id,
            fields="core,dataset,io,itemMetadata,experimentMetadata,metadata,scores",
            limit=25,
            cursor=cursor,
        )
        items += page.data
        cursor = page.meta.cursor
        if cursor is None:
            break
    assert sorted(item.experiment_item_id for item in items) == sorted(i.id for i in dataset.items)
    zero_run = next(item for item in items if item.experiment_item_id == "item-0")
    assert (zero_run.output, zero_run.expected_output) == ("0", "changed")
    assert zero_run.experiment_metadata == {"prompt": "v1"}
    assert zero_run.scores is not None
    assert [(s.name, s.value) for s in zero_run.scores] == [("correct", 0)]
    query = {
        "view": "scores-numeric",
        "metrics": [{"measure": "value", "aggregation": "avg"}],
        "dimensions": [{"field": "name"}],
        "fromTimestamp": "2020-01-01T00:00:00Z",
        "toTimestamp": "2100-01-01T00:00:00Z",
    }
    rows = langfuse.api.metrics.metrics(query=json.dumps(query)).data
    assert {row["name"]: row["avg_value"] for row in rows} == {
        "correct": pytest.approx(59 / 60),
        "accuracy": pytest.approx(59 / 60),
    }
    assert client.get(EXPERIMENTS, params={**SINCE, "name": "v2"}).json()["data"] == []


def test_the_sdk_runs_an_experiment_on_plain_data(langfuse: Langfuse, client: httpx.Client) -> None:
    result = langfuse.run_experiment(
        name="plain", data=PLAIN, task=lambda *, item, **_: item["input"]
    )
    langfuse.flush()
    (row,) = client.get(EXPERIMENTS, params=SINCE).json()["data"]
    assert (row["id"], row["itemCount"], row["datasetId"]) == (result.experiment_id, 2, None)


def test_the_sdk_deletes_a_trace_with_its_scores(langfuse: Langfuse, client: httpx.Client) -> None:
    traces = []
    for number in range(3):
        with langfuse.start_as_current_observation(name="answer-question") as one:
            langfuse.score_current_trace(name="rating", value=1.0, score_id=f"rating-{number}")
            traces.append(one.trace_id)
    langfuse.flush()
    langfuse.api.scores.delete("rating-2")
    langfuse.api.trace.delete(traces[0])
    assert {row["traceId"] for row in stored(client)} == {*traces[1:]}
    assert [s["id"] for s in client.get(READ_SCORES).json()["data"]] == ["rating-1"]
    langfuse.api.trace.delete_multiple(trace_ids=traces)
    assert stored(client) == client.get(READ_SCORES).json()["data"] == []


# Under bad input


@pytest.mark.parametrize("name", ["a/b", "with space", "100% größe?", "items"])
def test_any_dataset_name_can_be_stored_and_found(name: str, client: httpx.Client) -> None:
    made = client.post(DATASETS, json={"name": name, "metadata": {"a": 1}}).json()
    again = client.post(DATASETS, json={"name": name, "description": "new"}).json()
    assert (again["id"], again["metadata"], again["description"]) == (made["id"], {"a": 1}, "new")
    assert client.get(f"{DATASETS}/{quote(name, safe='')}").json() == again
    item = client.post(ITEMS, json={"datasetName": name, "id": "x/1", "input": "a"}).json()
    assert client.get(f"{ITEMS}/x%2F1").json() == item
    assert client.get(ITEMS, params={"datasetName": name}).json()["data"] == [item]


def test_an_update_keeps_what_it_does_not_name(
    client: httpx.Client, server: tuple[str, Path]
) -> None:
    client.post(DATASETS, json={"name": "golden"})
    first = {"id": "1", "input": [1], "expectedOutput": 2, "metadata": {"n": 0}}
    client.post(ITEMS, json={"datasetName": "golden", "status": "ARCHIVED", **first})
    connection = sqlite3.connect(server[1])
    with connection:
        connection.execute("UPDATE dataset_items SET created_us = 0")
    connection.close()
    client.post(ITEMS, json={"datasetName": "golden", "id": "1", "expectedOutput": 3})
    (item,) = client.get(ITEMS).json()["data"]
    assert (item["status"], item["createdAt"]) == ("ARCHIVED", "1970-01-01T00:00:00.000Z")
    assert item["updatedAt"] > "2020"
    assert {key: item[key] for key in first} == {**first, "expectedOutput": 3}
    client.post(DATASETS, json={"name": "other"})
    assert client.post(ITEMS, json={"datasetName": "other", "id": "1"}).status_code == 404
    assert client.delete(f"{ITEMS}/1").status_code == 200
    assert client.delete(f"{ITEMS}/1").status_code == 404


def test_items_have_pages_newest_first(client: httpx.Client) -> None:
    client.post(DATASETS, json={"name": "golden"})
    for number in range(5):
        client.post(ITEMS, json={"datasetName": "golden", "id": str(number)})
    pages = [client.get(ITEMS, params={"limit": 2, "page": page}).json() for page in (1, 2, 3)]
    assert [[item["id"] for item in page["data"]] for page in pages] == [
        ["4", "3"],
        ["2", "1"],
        ["0"],
    ]
    assert pages[0]["meta"] == {"page": 1, "limit": 2, "totalItems": 5, "totalPages": 3}


DEEP = json.loads("[" * 200 + "]" * 200)
TRACES = "/api/public/traces"


def each(url: str, body: dict[str, Any], key: str, *values: Any) -> list[tuple[str, Any]]:
    return [(url, {**body, key: value}) for value in values]


NO_BODIES: tuple[Any, ...] = (None, [], 5, "a", {})
GOLDEN = {"datasetName": "golden"}
BAD_BODIES: list[tuple[str, Any]] = [
    *((url, body) for url in (DATASETS, ITEMS, TRACES) for body in NO_BODIES),
    *each(DATASETS, {}, "name", "", 5, ["a"], {}, "x" * 256, "\ud800"),
    *each(DATASETS, {"name": "a"}, "description", 5),
    *each(DATASETS, {"name": "a"}, "metadata", DEEP),
    *each(DATASETS, {"name": "a"}, "inputSchema", {"type": "object"}),
    *each(ITEMS, {}, "datasetName", "nobody", 5, [], "\ud800"),
    *each(ITEMS, GOLDEN, "id", 5, [], "x" * 256),
    *each(ITEMS, GOLDEN, "status", "GONE", 5, []),
    *each(ITEMS, GOLDEN, "input", DEEP, "\ud800"),
    *each(ITEMS, GOLDEN, "sourceTraceId", 5),
    *each(TRACES, {}, "traceIds", "a", [], [5], [None], [*map(str, range(1001))]),
]


@pytest.mark.parametrize("number", range(len(BAD_BODIES)))
def test_a_bad_body_is_refused(number: int, client: httpx.Client) -> None:
    client.post(DATASETS, json={"name": "golden"})
    url, body = BAD_BODIES[number]
    method = "DELETE" if url.endswith("traces") else "POST"
    headers = {"content-type": "application/json"}
    answer = client.request(method, url, content=json.dumps(body), headers=headers)
    assert answer.status_code in (400, 404), answer.text
    assert answer.json()["message"]
    assert client.get(ITEMS).json()["data"] == []


NAME = {"type": "string", "column": "name", "operator": "=", "value": "a"}


@pytest.mark.parametrize(
    ("url", "query"),
    [
        *((url, {"limit": "101"}) for url in (DATASETS, ITEMS)),
        *((url, {"page": "0"}) for url in (DATASETS, ITEMS)),
        (ITEMS, {"datasetName": "nobody"}),
        (ITEMS, {"version": "2026-11-20T00:00:00Z"}),
        (f"{ITEMS}/nobody", {}),
        *((url, {}) for url in (EXPERIMENTS, EXPERIMENT_ITEMS)),
        *((url, {"fromStartTime": "yesterday"}) for url in (EXPERIMENTS, EXPERIMENT_ITEMS)),
        *((url, {**SINCE, "fields": "nonsense"}) for url in (EXPERIMENTS, EXPERIMENT_ITEMS)),
        *((url, {**SINCE, "limit": "101"}) for url in (EXPERIMENTS, EXPERIMENT_ITEMS)),
        *((url, {**SINCE, "cursor": "x"}) for url in (EXPERIMENTS, EXPERIMENT_ITEMS)),
        *((url, {**SINCE, "toStartTime": "x"}) for url in (EXPERIMENTS, EXPERIMENT_ITEMS)),
        *((url, {**SINCE, "filter": "[5]"}) for url in (EXPERIMENTS, EXPERIMENT_ITEMS)),
        (EXPERIMENTS, {**SINCE, "filter": json.dumps([{**NAME, "column": "level"}])}),
    ],
)
def test_a_bad_query_is_refused(url: str, query: dict[str, str], client: httpx.Client) -> None:
    answer = client.get(url, params=query)
    assert answer.status_code in (400, 404), answer.text
    assert answer.json()["message"]


def test_an_experiments_attributes_may_be_anything(client: httpx.Client) -> None:
    hostile = {
        "langfuse.experiment.id": {"intValue": "5"},
        "langfuse.experiment.name": {"arrayValue": {"values": [{"stringValue": "a"}]}},
        "langfuse.experiment.metadata": {"stringValue": "[NaN"},
        "langfuse.experiment.item.metadata": {"doubleValue": 0.5},
        "langfuse.experiment.item.root_observation_id": {"stringValue": f"{1:016x}"},
    }
    one = span(1)
    one["attributes"] = [{"key": key, "value": value} for key, value in hostile.items()]
    send(client, one)
    fields = {"fields": "core,dataset,io,metadata,itemMetadata,experimentMetadata,scores"}
    (item,) = client.get(EXPERIMENT_ITEMS, params={**SINCE, **fields}).json()["data"]
    assert (item["experimentId"], item["experimentName"]) == ("5", '["a"]')
    assert item["experimentMetadata"] == {"metadata": "[NaN"}
    (row,) = client.get(EXPERIMENTS, params={**SINCE, "fields": "metadata"}).json()["data"]
    assert row["metadata"] == {"metadata": "[NaN"}


# The file


def test_a_file_of_the_first_version_is_brought_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from local_langfuse import store

    db, every = tmp_path / "langfuse.db", store.MIGRATIONS
    monkeypatch.setattr(store, "MIGRATIONS", every[:1])
    old = local_langfuse.start(db)
    with client_of(old.base_url) as client:
        send(client, span(1))
        client.post(SCORES, json=[score(id="kept")])
    old.stop()
    monkeypatch.setattr(store, "MIGRATIONS", every)
    new = local_langfuse.start(db)
    with client_of(new.base_url) as client:
        assert [row["name"] for row in stored(client)] == ["step-1"]
        assert [row["id"] for row in client.get(READ_SCORES).json()["data"]] == ["kept"]
        assert client.post(DATASETS, json={"name": "golden"}).status_code == 200
    new.stop()
    connection = sqlite3.connect(db)
    assert connection.execute("PRAGMA user_version").fetchone() == (len(every),)
    connection.close()
