"""The recorded answers of a real Langfuse, replayed against `local_langfuse`."""

import base64
import gzip
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import local_langfuse

FILES = sorted((Path(__file__).parent / "contract").glob("*.json"))
Exchange = dict[str, Any]
RECORDED: dict[str, Exchange] = {
    f"{file.stem[3:]}-{number}": exchange
    for file in FILES
    for number, exchange in enumerate(json.loads(file.read_text()))
}

# What a server chooses for itself.
OWN_CHOICE = {
    *("createdAt", "updatedAt", "projectId", "cursor", "bookmarked", "public"),
    *("internalModelId", "modelId", "usagePricingTierId", "usagePricingTierName", "pricingTiers"),
    *("inputPrice", "outputPrice", "totalPrice", "promptId", "isActive", "lastUpdatedAt"),
}
SETS = {"labels", "tags", "scores"}  # lists without an order
COUNTS = ("accepted", "rejected")
# Its version, its project, its price table.
OWN_CONTENT = ("connection-0", "connection-1", "experiments-0", "models-0")
MADE_UP = re.compile(r"c[a-z0-9]{24}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}")


def comparable(value: Any) -> Any:
    """Drop what a server chooses for itself, and what is empty."""
    if isinstance(value, dict):
        found = {
            key: comparable(item)
            for key, item in value.items()
            if key not in OWN_CHOICE and not key.startswith(("scope.", "resourceAttributes."))
        }
        for key in SETS & found.keys():
            found[key].sort(key=str)
        return {key: item for key, item in found.items() if item not in (None, "", [], {})}
    if isinstance(value, list):
        return [comparable(item) for item in value]
    if isinstance(value, str):
        if MADE_UP.fullmatch(value):
            return "made up"
        time = TIME.match(value)
        return time[0] if time else value
    return value


def in_any_order(answer: Any, name: str) -> Any:
    """Sort the rows of a page, unless the request asked for an order."""
    answer = comparable(answer)
    is_ordered = "orderBy" in RECORDED[name]["request"]["query"].get("query", "")
    if isinstance(answer, dict) and isinstance(answer.get("data"), list) and not is_ordered:
        answer["data"].sort(key=lambda row: json.dumps(row, sort_keys=True))
    return answer


def same(ours: Any, theirs: Any) -> bool:
    """Compare, with numbers to one part in a million."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(same(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if type(ours) in (int, float) and type(theirs) in (int, float):
        return math.isclose(ours, theirs, rel_tol=1e-6, abs_tol=1e-9)
    return type(ours) is type(theirs) and bool(ours == theirs)


def body_of(request: Exchange) -> bytes | None:
    if "otlp_base64" in request:
        body = base64.b64decode(request["otlp_base64"])
        packed = request["headers"].get("content-encoding") == "gzip"
        return gzip.compress(body) if packed else body
    if "json" in request:
        return json.dumps(request["json"]).encode()
    return request["text"].encode() if "text" in request else None


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, httpx.Response]]:
    """Send all recordings in order to one new server, and keep what it answers."""
    server = local_langfuse.start(tmp_path_factory.mktemp("contract") / "langfuse.db")
    keys = (local_langfuse.PUBLIC_KEY, local_langfuse.SECRET_KEY)
    wrong_keys = iter([(local_langfuse.PUBLIC_KEY, "wrong"), None])  # as recorded, in this order
    found: dict[str, httpx.Response] = {}
    cursor = ""
    with httpx.Client(base_url=server.base_url, trust_env=False, timeout=60) as client:
        for name, exchange in RECORDED.items():
            request = exchange["request"]
            query = dict(request["query"])
            if "cursor" in query:
                query["cursor"] = cursor
            found[name] = client.request(
                request["method"],
                request["path"],
                params=query,
                content=body_of(request),
                headers=request["headers"],
                auth=next(wrong_keys) if exchange["response"]["status"] == 401 else keys,
            )
            cursor = cursor_of(found[name]) or cursor
    yield found
    server.stop()


def cursor_of(response: httpx.Response) -> str | None:
    answer = response.json() if response.content else {}
    cursor = (answer.get("meta") or {}).get("cursor") if isinstance(answer, dict) else None
    return cursor if isinstance(cursor, str) else None


@pytest.mark.parametrize("name", RECORDED)
def test_the_answer_is_the_recorded_one(name: str, answers: dict[str, httpx.Response]) -> None:
    recorded, answer = RECORDED[name]["response"], answers[name]
    assert answer.status_code == recorded["status"]
    if recorded["status"] >= 400:
        assert answer.json()["message"]
        return
    if "json" not in recorded:
        return
    ours, theirs = in_any_order(answer.json(), name), in_any_order(recorded["json"], name)
    if recorded["status"] == 207:  # the wording is free, the counts are not
        assert [ours.get(key) for key in COUNTS] == [theirs.get(key) for key in COUNTS]
        return
    if name in OWN_CONTENT:
        assert shape(answer.json()) >= shape(recorded["json"])
        return
    assert bool(cursor_of(answer)) == bool(recorded["json"].get("meta", {}).get("cursor"))
    assert same(ours, theirs), (ours, theirs)


def shape(value: Any, path: str = "") -> set[str]:
    """Return the paths of all keys that a client may rely on."""
    if isinstance(value, dict) and not path.endswith(("tokenizerConfig", "metadata")):
        return {p for k, v in value.items() for p in {f"{path}.{k}", *shape(v, f"{path}.{k}")}}
    return shape(value[0], f"{path}[]") if isinstance(value, list) and value else set()


def test_the_recordings_are_all_there() -> None:
    assert len(FILES) == 13
    assert len(RECORDED) == 129
