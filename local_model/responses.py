"""The Responses API, outgoing: an `Answer` becomes a response or its events."""

import time
from collections.abc import Iterator
from typing import Any

from local_model.answer import pieces
from local_model.exchange import Answer, Ask
from local_model.shape import Json

Event = tuple[bool, Json]  # whether it is a word, which takes its time


def response(ask: Ask, answer: Answer, body: Json) -> Json:
    """Return an answer as a response. `body` is the request, whose settings it repeats."""
    return _response(ask, body, answer)


def events(ask: Ask, answer: Answer, body: Json) -> Iterator[Event]:
    """Yield an answer as the typed events of a stream, numbered from 0."""
    for number, (is_word, event) in enumerate(_events(ask, answer, body)):
        yield is_word, {"type": event.pop("type"), "sequence_number": number, **event}


def _events(ask: Ask, answer: Answer, body: Json) -> Iterator[Event]:
    begun = _response(ask, body, None)
    yield False, {"type": "response.created", "response": begun}
    yield False, {"type": "response.in_progress", "response": begun}
    for index, item in enumerate(_output(ask, answer, body)):
        place = {"output_index": index}
        yield False, {"type": "response.output_item.added", **place, "item": _emptied(item)}
        place["item_id"] = item["id"]
        if item["type"] == "message":
            yield from _text_events(item["content"][0], {**place, "content_index": 0})
        elif item["type"] == "function_call":
            kind = "response.function_call_arguments"
            for piece in pieces(item["arguments"]):
                yield True, {"type": f"{kind}.delta", **place, "delta": piece}
            done = {"name": item["name"], "arguments": item["arguments"]}
            yield False, {"type": f"{kind}.done", **place, **done}
        yield False, {"type": "response.output_item.done", "output_index": index, "item": item}
    whole = _response(ask, body, answer)
    yield False, {"type": f"response.{whole['status']}", "response": whole}


def _emptied(item: Json) -> Json:
    """Return an item as it is announced: without the text that comes word by word."""
    without: Json = {"message": {"content": []}, "function_call": {"arguments": ""}}
    return {**item, "status": "in_progress", **without.get(item["type"], {})}


def _text_events(part: Json, place: Json) -> Iterator[Event]:
    empty = {**part, "text": ""}
    yield False, {"type": "response.content_part.added", **place, "part": empty}
    kind = "response.output_text"
    no_probabilities: Json = {"logprobs": []}
    for piece in pieces(part["text"]):
        yield True, {"type": f"{kind}.delta", **place, "delta": piece, **no_probabilities}
    yield False, {"type": f"{kind}.done", **place, "text": part["text"], **no_probabilities}
    yield False, {"type": "response.content_part.done", **place, "part": part}


def _output(ask: Ask, answer: Answer, body: Json) -> list[Json]:
    """Return the items of an answer: its thoughts, which are not shown, and text or calls."""
    items: list[Json] = []
    status = "incomplete" if answer.finish == "length" else "completed"
    if answer.usage.reasoning:
        thoughts: Json = {"id": ask.id("rs_"), "type": "reasoning", "summary": []}
        if "reasoning.encrypted_content" in (body.get("include") or ()):
            thoughts["encrypted_content"] = "local-model"  # there is nothing to hide
        items.append(thoughts)
    for index, call in enumerate(answer.calls):
        last = index == len(answer.calls) - 1
        items.append(
            {
                "id": ask.id("fc_", str(index)),
                "type": "function_call",
                "status": status if last else "completed",
                "call_id": call.id,
                "name": call.name,
                "arguments": call.arguments,
            }
        )
    if answer.text or not (answer.calls or answer.finish == "length"):
        part = {"type": "output_text", "text": answer.text, "annotations": [], "logprobs": []}
        message = {"id": ask.id("msg_"), "type": "message", "status": status, "role": "assistant"}
        items.append({**message, "content": [part]})
    return items


def _usage(answer: Answer) -> Json:
    usage = answer.usage
    return {
        "input_tokens": usage.input,
        "input_tokens_details": {
            "cached_tokens": usage.cached,
            "cache_write_tokens": usage.written,
        },
        "output_tokens": usage.output,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.input + usage.output,
    }


def _response(ask: Ask, body: Json, answer: Answer | None) -> Json:
    """Return the response, or its beginning if there is no answer yet."""
    cut = answer is not None and answer.finish == "length"
    status = "incomplete" if cut else "completed"
    now = int(time.time())
    sent = {key: value for key, value in body.items() if value is not None}
    text = {"format": {"type": "text"}, "verbosity": "medium"} | sent.get("text", {})
    reasoning: Json | None = None
    if ask.model.reasons:
        told = {"summary": None, **sent.get("reasoning", {})}
        reasoning = {**told, "effort": ask.effort}
    caching: Any = None
    if ask.model.writes_cache:
        caching = {"mode": "implicit", "ttl": "30m"} | sent.get("prompt_cache_options", {})
        caching.pop("prewarm", None)
    return {
        "id": ask.id("resp_"),
        "object": "response",
        "created_at": now,
        "status": "in_progress" if answer is None else status,
        "background": False,
        "completed_at": now if answer and not cut else None,
        "conversation": None,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "instructions": sent.get("instructions"),
        "max_output_tokens": ask.limit,
        "max_tool_calls": sent.get("max_tool_calls"),
        "metadata": sent.get("metadata", {}),
        "model": ask.model.dated,
        "output": [] if answer is None else _output(ask, answer, body),
        "parallel_tool_calls": ask.parallel,
        "previous_response_id": None,
        "prompt": None,
        "prompt_cache_key": sent.get("prompt_cache_key"),
        "prompt_cache_options": caching,
        "prompt_cache_retention": sent.get("prompt_cache_retention"),
        "reasoning": reasoning,
        "safety_identifier": sent.get("safety_identifier"),
        "service_tier": "default",
        "store": False,  # nothing is stored here, whatever you send
        "temperature": sent.get("temperature", 1.0),
        "text": text,
        "tool_choice": sent.get("tool_choice", "auto"),
        "tools": [_tool(tool) for tool in sent.get("tools", [])],
        "top_logprobs": 0,
        "top_p": sent.get("top_p", 1.0),
        "truncation": sent.get("truncation", "disabled"),
        "usage": None if answer is None else _usage(answer),
        "user": sent.get("user"),
        "access_programs": None,
        "image": None,
        "input_transformations": None,
        "moderation": None,
        "prompt_cache_diagnostics": None,
        "tool_usage": None,
    }


def _tool(tool: Json) -> Json:
    return {"description": None, "parameters": None, "strict": True, **tool}
