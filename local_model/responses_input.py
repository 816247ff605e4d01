"""The Responses API, incoming: a body becomes an `Ask`."""

import json
from dataclasses import replace
from typing import Any

from local_model.catalog import Clock, Model, find_for
from local_model.chat import caches, pick
from local_model.exchange import Ask, Message, Tool
from local_model.form import refuse_schema
from local_model.responses_shape import NOTHING_STORED, RESPONSE
from local_model.rules import (
    LOCAL,
    effort_of,
    refuse_options_without_stream,
    refuse_sampling,
    refuse_too_long,
)
from local_model.shape import Json, refuse

UNSEEN = {"input_image": "image", "input_file": "file"}
# OpenAI knows these; here they are refused, with the reason. Others that change nothing pass.
NOT_HERE = {
    "background": "it answers at once.",
    "background_options": "it answers at once.",
    "context_management": "it never compacts anything.",
    "conversation": NOTHING_STORED,
    "moderation": "it has no moderation.",
    "previous_response_id": NOTHING_STORED,
    "prompt": f"it knows no prompt templates: {NOTHING_STORED}",
}


def read_response(body: Json, digest: str, clock: Clock) -> Ask:
    """Return what a request asks, or raise the `ApiError` that OpenAI would answer with."""
    for moved, to in (("reasoning_effort", "reasoning.effort"), ("response_format", "text.format")):
        refuse(
            moved in body,
            f"Unsupported parameter: '{moved}'. In the Responses API, this parameter has moved to "
            f"'{to}'. Try again with the new parameter.",
            moved,
            "unsupported_parameter",
        )
    RESPONSE(body, "")
    body = {key: value for key, value in body.items() if value is not None}
    model = find_for(body["model"], clock, embeds=False)
    for key, why in NOT_HERE.items():
        refuse(body.get(key), LOCAL + why, key)
    options = body.get("prompt_cache_options", {})
    for key, why in (
        ("prewarm", "it generates at once."),
        ("comparison_response_id", NOTHING_STORED),
    ):
        refuse(options.get(key), LOCAL + why, f"prompt_cache_options.{key}")
    refuse_options_without_stream(body)
    effort = _effort(model, body.get("reasoning", {}))
    refuse_sampling(model, effort, body)
    tools, choice = _tools(body)
    messages = _messages(body)
    form = body.get("text", {}).get("format", {"type": "text"})
    _refuse_form(form, body)
    extra = json.dumps(body["tools"]) if body.get("tools") else ""
    extra += json.dumps(form) if form["type"] != "text" else ""
    refuse_too_long(messages, extra)
    return Ask(
        model,
        messages,
        digest,
        tools,
        choice,
        body.get("parallel_tool_calls", True),
        form["type"],
        form.get("schema", {}),
        effort,
        body.get("max_output_tokens"),
        (),
        extra,
        caches(body, "input"),
    )


def _effort(model: Model, options: Json) -> str:
    for key, value in options.items():
        refuse(
            value is not None and not model.reasons,
            f"Unsupported parameter: 'reasoning.{key}' is not supported with this model.",
            f"reasoning.{key}",
            "unsupported_parameter",
        )
    return effort_of(model, options.get("effort"), "reasoning.effort")


def _tools(body: Json) -> tuple[tuple[Tool, ...], str]:
    """Return the tools that may be called, and whether a call is allowed, required or not."""
    tools = []
    for index, tool in enumerate(body.get("tools", [])):
        schema = tool.get("parameters") or {}
        if schema:
            where, what = f"tools[{index}].parameters", f"function '{tool['name']}'"
            strict = bool(tool.get("strict"))
            refuse_schema(schema, what, where, "invalid_function_parameters", strict=strict)
        tools.append(Tool(tool["name"], tool.get("description") or "", schema))
    choice = body.get("tool_choice", "auto")
    if isinstance(choice, str):
        refuse(
            choice == "required" and not tools,
            "Tool choice 'required' must be specified with 'tools' parameter.",
            "tool_choice",
        )
        return tuple(tools), choice
    if choice["type"] == "allowed_tools":
        names = [tool.get("name") for tool in choice["tools"]]
        return pick(tools, names), choice["mode"]
    return pick(tools, [choice.get("name", choice["type"])]), "required"


def _messages(body: Json) -> tuple[Message, ...]:
    """Return the conversation as chat completions would write it.

    Calls that follow each other become one message of the assistant; its reasoning is not
    part of the prompt.
    """
    rows = [Message("system", (body["instructions"],))] if body.get("instructions") else []
    if isinstance(body["input"], str):
        return (*rows, Message("user", (body["input"],)))
    made, answered = set[str](), set[str]()
    for item in body["input"]:
        match item.get("type", "message"):
            case "message":
                rows.append(_message(item["role"], item["content"]))
            case "function_call":
                made.add(item["call_id"])
                called = {"name": item["name"], "arguments": item["arguments"]}
                call = {"id": item["call_id"], "type": "function", "function": called}
                if rows and rows[-1].calls:
                    rows[-1] = replace(rows[-1], calls=(*rows[-1].calls, call))
                else:
                    rows.append(Message("assistant", calls=(call,)))
            case "function_call_output":
                refuse(
                    item["call_id"] not in made,
                    f"No tool call found for function call output with call_id {item['call_id']}.",
                    "input",
                )
                answered.add(item["call_id"])
                rows.append(_message("tool", item["output"]))
    for call_id in sorted(made - answered):
        refuse(call_id, f"No tool output found for function call {call_id}.", "input")
    return tuple(rows)


def _message(role: str, content: Any) -> Message:
    parts = [{"type": "input_text", "text": content}] if isinstance(content, str) else content
    texts = [part.get("text") or part.get("refusal") or "" for part in parts]
    unseen = tuple(UNSEEN[part["type"]] for part in parts if part["type"] in UNSEEN)
    return Message(role, tuple(filter(None, texts)), unseen=unseen)


def _refuse_form(form: Json, body: Json) -> None:
    if form["type"] == "json_object":
        refuse(
            "json" not in json.dumps(body["input"]).lower(),
            "Response input messages must contain the word 'json' in some form to use "
            "'text.format' of type 'json_object'.",
            "input",
        )
    elif form["type"] == "json_schema":
        what, strict = f"response_format '{form['name']}'", bool(form.get("strict"))
        code = "invalid_json_schema"
        refuse_schema(form["schema"], what, "text.format.schema", code, strict=strict)
