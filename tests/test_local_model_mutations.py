"""5,000 requests with something wrong in them: each is answered, and none with 500."""

import asyncio
import copy
import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from local_model import server

# A path, and a request that is answered with 200.
VALID: list[tuple[str, Any]] = [
    (path, json.loads(body))
    for path, body in (
        (
            "chat/completions",
            """{"model": "gpt-4o", "messages": [
            {"role": "system", "content": "Answer in 2 words. If it is not there, say 'No'."},
            {"role": "user", "content": [{"type": "text", "text": "Where is A-1042?"}]},
            {"role": "assistant", "content": null, "tool_calls": [{"id": "c1", "type": "function",
            "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "[{\\"state\\": \\"sent\\"}, 7]"},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}],
            "tools": [{"type": "function", "function": {"name": "look_up_order", "parameters":
            {"type": "object", "properties": {"order_id": {"type": "string"}},
            "required": ["order_id"]}}}], "parallel_tool_calls": true, "max_tokens": 9,
            "tool_choice": {"type": "function", "function": {"name": "look_up_order"}},
            "temperature": 0.5, "stop": ["x"], "stream": true, "metadata": {"a": "b"},
            "stream_options": {"include_usage": true}}""",
        ),
        (
            "chat/completions",
            """{"model": "gpt-6-luna", "reasoning_effort": "low", "max_completion_tokens": 50,
            "messages": [{"role": "user", "content": "Question: 12 euros?\\nContext: a ticket."}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema":
            {"type": "object", "properties": {"kind": {"enum": ["a", "b"]},
            "claims": {"type": "array", "items": {"$ref": "#/$defs/claim"}},
            "score": {"type": "number", "minimum": 1, "maximum": 5, "description": "1 to 5"},
            "relevance": {"type": "boolean"}, "price": {"anyOf": [{"type": "integer"},
            {"type": "null"}]}}, "$defs": {"claim": {"type": "object", "properties":
            {"text": {"type": "string"}}}}}}}}""",
        ),
        (
            "responses",
            """{"model": "gpt-6-luna", "instructions": "Be brief.", "input": [
            {"role": "user", "content": "Where are A-1042 and A-1043?"},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "sent"}, {"type": "message",
            "role": "user", "content": [{"type": "input_text", "text": "And A-1043?"}]}],
            "tools": [{"type": "function", "name": "look_up", "strict": false, "parameters":
            {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]}}],
            "tool_choice": "auto", "reasoning": {"effort": "high", "summary": "auto"},
            "include": ["reasoning.encrypted_content"], "max_output_tokens": 100, "stream": true,
            "text": {"format": {"type": "json_schema", "name": "x", "schema":
            {"type": "object", "properties": {"a": {"type": "integer"}}}}}}""",
        ),
        (
            "embeddings",
            """{"model": "text-embedding-3-small", "input": ["a", "b"], "dimensions": 8}""",
        ),
    )
]
DEEP: Any = 0
for _ in range(200):
    DEEP = [DEEP]
ODD: list[Any] = [
    *(None, True, 0, -1, 1.5, 10**400, 1e308, "", " ", "none", "json_schema", "\ud800", "9" * 5000),
    *("\0", '"' * 999, "“" * 999, "'a " * 500, "?" * 999, "\n" * 999, [], {}, [[]], [None], DEEP),
    *({"type": "object"}, {"$ref": "#"}, {"type": ["null", {}]}, "A-1042 A-1043", "x" * 70_000),
    *("0 words", "Answer in 0 sentences. 9999999 words", '{"a": "\\ud800"}', "gpt-4o", {"a": "b"}),
]
BODIES = [b"", b"{", b"7", b"\xff", b"[" * 5000, b'{"model": NaN}', b'{"a": ' + b"9" * 5000 + b"}"]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container in a value with each of its keys."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


def mutated(body: Any, dice: random.Random) -> Any:
    body = copy.deepcopy(body)
    for _ in range(dice.choice((1, 1, 2, 3))):
        container, key = dice.choice(list(places(body)))
        match dice.randrange(5):
            case 0:
                del container[key]
            case 1 if isinstance(container, dict):
                container[dice.choice(("type", "extra", "$ref", "\ud800"))] = copy.deepcopy(
                    dice.choice(ODD)
                )
            case 2:
                other, there = dice.choice(list(places(body)))
                container[key] = copy.deepcopy(other[there])
            case _:
                container[key] = copy.deepcopy(dice.choice(ODD))
        if not body:
            break
    return body


async def post(app: Any, path: str, body: bytes) -> tuple[int, bytes]:
    """Ask the application itself: no socket, so that 2,000 requests take seconds."""
    sent: list[Any] = []
    messages = [{"type": "http.request", "body": body}]

    async def receive() -> Any:
        return messages.pop() if messages else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"authorization", b"Bearer x")]
    scope: Any = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
    }
    scope |= {"path": f"/v1/{path}", "raw_path": b"", "query_string": b"", "headers": headers}
    await app({**scope, "scheme": "http", "root_path": ""}, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


def test_no_mutated_request_is_answered_with_500(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_TOKEN_SECONDS", "TOKEN_SECONDS", "EMBEDDING_SECONDS"):
        monkeypatch.setattr(server, name, 0.0)
    dice, app, seen = random.Random(9), server.application(), Counter[int]()

    async def run() -> None:
        for path, body in VALID:
            status, answer = await post(app, path, json.dumps(body).encode())
            assert status == 200, answer
        bodies = [(path, raw) for path, _ in VALID for raw in BODIES]
        while len(bodies) < 2000:
            path, body = dice.choice(VALID)
            bodies.append((path, json.dumps(mutated(body, dice)).encode()))
        for path, raw in bodies:
            status, answer = await post(app, path, raw)
            seen[status] += 1
            if status != 200:
                error = json.loads(answer)["error"]
                assert error.keys() == {"message", "type", "param", "code"}
                assert error["message"]
                assert status in {400, 404, 413}, (raw, error)

    asyncio.run(run())
    assert seen[200] > 100
    assert seen[400] > 1000
