"""Managed prompts of `local_langfuse`: versions, labels, names, and what is refused."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from conftest import client_of
from test_local_langfuse import serve as serve_process

PROMPTS = "/api/public/v2/prompts"
TEXT = {"name": "answer-question", "prompt": "Answer {{question}}"}


def create(client: httpx.Client, **more: Any) -> dict[str, Any]:
    answer = client.post(PROMPTS, json={**TEXT, **more})
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def path(name: str) -> str:
    return f"{PROMPTS}/{quote(name, safe='')}"


def labels(client: httpx.Client, name: str = TEXT["name"]) -> dict[str, int]:
    """Return where each label is, read version by version."""
    (row,) = listed(client, name=name)
    versions = [client.get(path(name), params={"version": v}).json() for v in row["versions"]]
    return {label: version["version"] for version in versions for label in version["labels"]}


def listed(client: httpx.Client, **query: Any) -> list[dict[str, Any]]:
    answer = client.get(PROMPTS, params=query)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


def test_a_label_is_on_one_version_and_moves(client: httpx.Client) -> None:
    assert create(client, labels=["production", "staging"])["version"] == 1
    assert create(client, labels=["staging"])["version"] == 2
    assert labels(client) == {"production": 1, "staging": 2, "latest": 2}
    moved = client.patch(f"{path(TEXT['name'])}/versions/2", json={"newLabels": ["production"]})
    assert sorted(moved.json()["labels"]) == ["latest", "production", "staging"]
    create(client)
    assert labels(client) == {"production": 2, "staging": 2, "latest": 3}
    assert client.get(path(TEXT["name"])).json()["version"] == 2, "production, where none is asked"


@pytest.mark.parametrize(
    "name",
    ["shop/support/answer", "with space", "100% sure?", "a/versions/1", "größe/#&=+", "..", "/a/"],
)
def test_any_name_can_be_stored_found_labelled_and_deleted(name: str, client: httpx.Client) -> None:
    if name == "..":  # clients resolve this one away before it is sent
        name = "..a"
    create(client, name=name, labels=["production"])
    assert client.get(path(name)).json()["name"] == name
    answer = client.patch(f"{path(name)}/versions/1", json={"newLabels": ["staging"]})
    assert sorted(answer.json()["labels"]) == ["latest", "production", "staging"]
    assert [row["name"] for row in listed(client, name=name)] == [name]
    assert client.delete(path(name)).status_code == 204
    assert client.get(path(name)).status_code == 404


def test_tags_are_the_prompts_and_config_the_versions(client: httpx.Client) -> None:
    create(client, tags=["support", "support"], config={"model": "gpt-4o"}, commitMessage="first")
    second = create(client, tags=None)
    assert (second["tags"], second["config"]) == (["support"], {})
    create(client, tags=["shop"])
    first = client.get(path(TEXT["name"]), params={"version": 1}).json()
    assert (first["tags"], first["config"]) == (["shop"], {"model": "gpt-4o"})
    assert first["commitMessage"] == "first"


def test_a_chat_prompt_keeps_its_messages_and_placeholders(client: httpx.Client) -> None:
    messages = [
        {"role": "system", "content": "Answer {{question}}"},
        {"type": "placeholder", "name": "history"},
    ]
    create(client, type="chat", prompt=messages, labels=["production"])
    answer = client.get(path(TEXT["name"])).json()
    assert (answer["type"], answer["prompt"]) == ("chat", messages)
    assert client.post(PROMPTS, json=TEXT).status_code == 400, "a text now"


def test_deleting_versions_leaves_latest_on_the_highest(client: httpx.Client) -> None:
    for label in ("a", "b", "c"):
        create(client, labels=[label])
    url = path(TEXT["name"])
    assert client.delete(url, params={"version": 3}).status_code == 204
    assert labels(client) == {"a": 1, "b": 2, "latest": 2}
    assert client.delete(url, params={"label": "a"}).status_code == 204
    assert labels(client) == {"b": 2, "latest": 2}
    assert client.delete(url, params={"version": 1}).status_code == 404
    assert client.delete(url).status_code == 204
    assert listed(client) == []
    assert create(client)["version"] == 1


def test_a_list_says_what_matches_version_by_version(client: httpx.Client) -> None:
    create(client, labels=["production"], config={"model": "gpt-4o"}, tags=["support"])
    create(client, labels=["staging"], config={"model": "gpt-5"})
    create(client, name="other", labels=["production"])
    (row,) = listed(client, label="staging")
    assert (row["versions"], row["labels"]) == ([2], ["latest", "staging"])
    (row,) = listed(client, tag="support")
    assert (row["versions"], row["lastConfig"]) == ([1, 2], {"model": "gpt-5"})
    model = {"type": "stringObject", "column": "config", "key": "model", "operator": "="}
    (row,) = listed(client, filter=json.dumps([{**model, "value": "gpt-4o"}]), name="other")
    assert (row["name"], row["versions"]) == (TEXT["name"], [1])
    assert listed(client, fromUpdatedAt="2100-01-01T00:00:00Z") == []
    assert len(listed(client, toUpdatedAt="2100-01-01T00:00:00Z")) == 2


def test_a_list_has_pages(client: httpx.Client) -> None:
    for number in range(5):
        create(client, name=f"prompt-{number}")
    names = [listed(client, limit=2, page=page) for page in (1, 2, 3, 4)]
    assert [[row["name"][-1] for row in page] for page in names] == [
        ["0", "1"],
        ["2", "3"],
        ["4"],
        [],
    ]
    meta = client.get(PROMPTS, params={"limit": 2}).json()["meta"]
    assert meta == {"page": 1, "limit": 2, "totalItems": 5, "totalPages": 3}


def test_two_processes_that_create_versions_at_once_number_them_all(tmp_path: Path) -> None:
    started = [serve_process(tmp_path / "langfuse.db") for _ in range(2)]
    clients = [client_of(url) for _, url in started]
    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(lambda n: create(clients[n % 2], labels=["production"]), range(80)))
    assert sorted(prompt["version"] for prompt in made) == [*range(1, 81)]
    labelled = {
        label: clients[0].get(path(TEXT["name"]), params={"label": label}).json()["version"]
        for label in ("production", "latest")
    }
    assert labelled == {"production": 80, "latest": 80}
    for (process, _), client in zip(started, clients, strict=True):
        client.close()
        process.terminate()
        process.communicate(timeout=60)


DEEP = json.loads("[" * 200 + "]" * 200)
CHAT = {"name": "a", "type": "chat"}


def each(body: dict[str, Any], key: str, *values: Any) -> list[Any]:
    return [{**body, key: value} for value in values]


BAD_PROMPTS: list[Any] = [
    *(None, [], "text", {}),
    *each(TEXT, "name", None, 5, "", "a|b", "x" * 256, "\ud800", ["a"]),
    *each(TEXT, "prompt", None, 5, ["a"], {}, "\ud800", 10**400),
    *each(TEXT, "prompt", "@@@langfusePrompt:name=other|label=production@@@"),
    *each(TEXT, "type", "chat", "image", 5, ["text"]),
    *each(CHAT, "prompt", "a", [5], [{}], [{"role": "user"}], [{"type": "placeholder", "name": 5}]),
    *each(TEXT, "labels", "a", [5], ["A"], [""], ["x" * 37], ["a b"], {"a": 1}),
    *each(TEXT, "tags", "a", [5], [None], {}),
    *each(TEXT, "config", DEEP),
    *each(TEXT, "commitMessage", 5),
]


@pytest.mark.parametrize("number", range(len(BAD_PROMPTS)))
def test_a_bad_prompt_is_refused_and_not_stored(number: int, client: httpx.Client) -> None:
    headers = {"content-type": "application/json"}
    answer = client.post(PROMPTS, content=json.dumps(BAD_PROMPTS[number]), headers=headers)
    assert answer.status_code == 400, answer.text
    assert answer.json()["message"]
    assert listed(client) == []


@pytest.mark.parametrize(
    ("request_line", "query", "body", "status"),
    [
        ("GET ", {"version": "1", "label": "production"}, None, 400),
        ("GET ", {"version": "one"}, None, 400),
        ("GET ", {"version": "9" * 5000}, None, 400),
        ("GET ", {"version": "-1"}, None, 400),
        ("GET ", {"version": "2"}, None, 404),
        ("GET ", {"label": "staging"}, None, 404),
        ("DELETE ", {"label": "staging"}, None, 404),
        ("DELETE -of-nobody", {}, None, 404),
        ("PATCH /versions/2", {}, {"newLabels": ["a"]}, 404),
        ("PATCH /versions/" + "9" * 5000, {}, {"newLabels": ["a"]}, 400),
        ("PATCH /versions/1", {}, {"newLabels": ["latest"]}, 400),
        ("PATCH /versions/1", {}, {"newLabels": "a"}, 400),
        ("PATCH /versions/1", {}, {}, 400),
        ("PATCH /versions/1", {}, [], 400),
        ("PATCH ", {}, {"newLabels": ["a"]}, 405),
    ],
)
def test_a_bad_request_for_a_prompt_is_refused(
    request_line: str, query: dict[str, str], body: Any, status: int, client: httpx.Client
) -> None:
    create(client, labels=["production"])
    method, _, tail = request_line.partition(" ")
    answer = client.request(method, path(TEXT["name"]) + tail, params=query, json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["message"]
    assert labels(client) == {"production": 1, "latest": 1}


@pytest.mark.parametrize(
    "query",
    [
        {"page": "0"},
        {"limit": "101"},
        {"limit": "x"},
        {"version": "x"},
        {"fromUpdatedAt": "yesterday"},
        {"filter": "[1]"},
        {"filter": '[{"type": "string", "column": "nonsense", "operator": "=", "value": "a"}]'},
        {"name": "a\0"},
    ],
)
def test_a_bad_list_of_prompts_is_refused(query: dict[str, str], client: httpx.Client) -> None:
    answer = client.get(PROMPTS, params=query)
    assert answer.status_code == 400, answer.text
    assert answer.json()["message"]
