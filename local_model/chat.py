"""Chat completions: turn a body into an `Ask`, and an `Answer` into a completion or chunks."""

import json
import time
from collections.abc import Iterator
from typing import Any

from local_model.answer import pieces
from local_model.catalog import Clock, find_for
from local_model.chat_shape import CHAT
from local_model.exchange import Answer, Ask, Message, Tool
from local_model.form import refuse_schema
from local_model.rules import (
    LOCAL,
    effort_of,
    refuse_chat_tools,
    refuse_options_without_stream,
    refuse_sampling,
    refuse_too_long,
)
from local_model.shape import ApiError, Json, refuse

UNSEEN = {"image_url": "image", "input_audio": "audio recording", "file": "file"}
# OpenAI knows these; here they are refused, with the reason. Others that change nothing pass.
NOT_HERE = {
    "audio": "it has no audio.",
    "functions": "send `tools` instead of the deprecated `functions`.",
    "function_call": "send `tool_choice` instead of the deprecated `function_call`.",
    "moderation": "it has no moderation.",
    "web_search_options": "it has no access to the web.",
}


def read_chat(body: Json, digest: str, clock: Clock) -> Ask:
    """Return what a request asks, or raise the `ApiError` that OpenAI would answer with."""
    CHAT(body, "")
    body = {key: value for key, value in body.items() if value is not None}
    model = find_for(body["model"], clock, embeds=False)
    for key, why in NOT_HERE.items():
        refuse(key in body, LOCAL + why, key)
    refuse("audio" in body.get("modalities", []), f"{LOCAL}it has no audio.", "modalities")
    refuse(body.get("n", 1) != 1, f"{LOCAL}it gives only one answer, so `n` must be 1.", "n")
    refuse_options_without_stream(body)
    sent = body.get("reasoning_effort")
    effort = effort_of(model, sent, "reasoning_effort")
    refuse_sampling(model, effort, body)
    tools, choice = _tools(body)
    if tools:
        refuse_chat_tools(model, sent)
    _refuse_order(body["messages"])
    messages = tuple(map(_message, body["messages"]))
    shape = body.get("response_format", {"type": "text"})
    _refuse_form(shape, messages)
    extra = "".join(json.dumps(body[key]) for key in ("tools", "response_format") if key in body)
    refuse_too_long(messages, extra)
    stop = body.get("stop", [])
    return Ask(
        model,
        messages,
        digest,
        tools,
        choice,
        body.get("parallel_tool_calls", True),
        shape["type"],
        shape.get("json_schema", {}).get("schema", {}),
        effort,
        body.get("max_completion_tokens", body.get("max_tokens")),
        (stop,) if isinstance(stop, str) else tuple(stop),
        extra,
        caches(body, "messages"),
    )


def caches(body: Json, key: str) -> bool:
    """Tell whether a request uses the prompt cache: explicit mode needs a breakpoint."""
    explicit = body.get("prompt_cache_options", {}).get("mode") == "explicit"
    return not explicit or "prompt_cache_breakpoint" in json.dumps(body[key])


def _message(row: Json) -> Message:
    content = row.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    texts = [part.get("text") or part.get("refusal") or "" for part in parts]
    unseen = tuple(UNSEEN[part["type"]] for part in parts if part["type"] in UNSEEN)
    calls = tuple(row.get("tool_calls") or ())
    return Message(row["role"], tuple(filter(None, texts)), calls, row.get("name") or "", unseen)


def _tools(body: Json) -> tuple[tuple[Tool, ...], str]:
    """Return the tools that may be called, and whether a call is allowed, required or not."""
    if "tools" not in body:
        for key in ("tool_choice", "parallel_tool_calls"):
            refuse(key in body, f"'{key}' is only allowed when 'tools' are specified.", key)
    tools = []
    for index, tool in enumerate(body.get("tools", [])):
        refuse(tool["type"] != "function", f"{LOCAL}it only calls functions.", f"tools[{index}]")
        function = tool["function"]
        name, schema = function["name"], function.get("parameters") or {}
        if schema:
            where = f"tools[{index}].function.parameters"
            strict = bool(function.get("strict"))
            refuse_schema(
                schema, f"function '{name}'", where, "invalid_function_parameters", strict=strict
            )
        tools.append(Tool(name, function.get("description") or "", schema))
    choice = body.get("tool_choice", "auto")
    if isinstance(choice, str):
        return tuple(tools), choice
    if choice["type"] == "allowed_tools":
        allowed = [tool.get("function", {}) for tool in choice["allowed_tools"]["tools"]]
        names = [function.get("name") for function in allowed if isinstance(function, dict)]
        choice = choice["allowed_tools"]["mode"]
    else:
        names, choice = [choice["function"]["name"]], "required"
    return pick(tools, names), choice


def pick(tools: list[Tool], names: list[Any]) -> tuple[Tool, ...]:
    """Return the tools that a choice names; refuse a name that is not among them."""
    for name in names:
        refuse(
            name not in [tool.name for tool in tools],
            f"Tool choice '{str(name)[:100]}' not found in 'tools' parameter.",
            "tool_choice",
        )
    return tuple(tool for tool in tools if tool.name in names)


def _refuse_order(rows: list[Json]) -> None:
    """Refuse results without their calls, and calls without their results."""
    waiting: list[str] | None = None  # the calls without a result; None if there was no call
    for index, row in enumerate([*rows, {"role": "end"}]):
        if row["role"] == "tool":
            if waiting is None:
                raise ApiError(
                    "Invalid parameter: messages with role 'tool' must be a response to a "
                    "preceeding message with 'tool_calls'.",
                    f"messages.[{index}].role",
                )
            refuse(
                row["tool_call_id"] not in waiting,
                f"Invalid parameter: 'tool_call_id' of '{row['tool_call_id'][:100]}' not found in "
                "'tool_calls' of previous message.",
                f"messages.[{index}].tool_call_id",
            )
            waiting.remove(row["tool_call_id"])
            continue
        refuse(
            waiting,
            "An assistant message with 'tool_calls' must be followed by tool messages responding "
            "to each 'tool_call_id'. The following tool_call_ids did not have response messages: "
            f"{', '.join(waiting or [])[:500]}",
            f"messages.[{index - 1}].role",
        )
        waiting = [call["id"] for call in row["tool_calls"]] if "tool_calls" in row else None


def _refuse_form(shape: Json, messages: tuple[Message, ...]) -> None:
    if shape["type"] == "json_object":
        refuse(
            not any("json" in message.text.lower() for message in messages),
            "'messages' must contain the word 'json' in some form, to use 'response_format' of "
            "type 'json_object'.",
            "messages",
        )
    elif shape["type"] == "json_schema":
        told = shape["json_schema"]
        what, strict = f"response_format '{told['name']}'", bool(told.get("strict"))
        refuse_schema(told.get("schema", {}), what, "response_format", None, strict=strict)


def _head(ask: Ask, kind: str) -> Json:
    return {
        "id": ask.id("chatcmpl-"),
        "object": kind,
        "created": int(time.time()),
        "model": ask.model.dated,
        "service_tier": "default",
        "system_fingerprint": "local",
    }


def _usage(answer: Answer) -> Json:
    usage = answer.usage
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached,
            "cache_write_tokens": usage.written,
            "audio_tokens": 0,
        },
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def completion(ask: Ask, answer: Answer) -> Json:
    """Return an answer as a chat completion."""
    message: Json = {
        "role": "assistant",
        "content": answer.text,
        "refusal": None,
        "annotations": [],
    }
    if answer.calls:
        calls = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in answer.calls
        ]
        message |= {"content": None, "tool_calls": calls}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish}
    return {**_head(ask, "chat.completion"), "choices": [choice], "usage": _usage(answer)}


def chunks(ask: Ask, answer: Answer, *, with_usage: bool) -> Iterator[tuple[bool, Json]]:
    """Yield an answer in chunks, one per word, each with whether it is a word."""
    head = {**_head(ask, "chat.completion.chunk"), **({"usage": None} if with_usage else {})}

    def chunk(delta: Json, finish: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**head, "choices": [choice]}

    content = None if answer.calls else ""
    yield False, chunk({"role": "assistant", "content": content, "refusal": None})
    for piece in pieces(answer.text):
        yield True, chunk({"content": piece})
    for index, call in enumerate(answer.calls):
        opened = {"name": call.name, "arguments": ""}
        start = {"index": index, "id": call.id, "type": "function", "function": opened}
        yield False, chunk({"tool_calls": [start]})
        for piece in pieces(call.arguments):
            part = {"index": index, "function": {"arguments": piece}}
            yield True, chunk({"tool_calls": [part]})
    yield False, chunk({}, answer.finish)
    if with_usage:
        yield False, {**head, "choices": [], "usage": _usage(answer)}
