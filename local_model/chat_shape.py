"""The shape of a chat completion request: every parameter in `openai` 3.57 and its type."""

from typing import Any

from local_model.shape import (
    anything,
    by_type,
    decimal,
    fields,
    flag,
    items,
    kind_of,
    mapping,
    metadata,
    nullable,
    one_of,
    refuse,
    tagged,
    text,
    whole,
)

FUNCTION_NAME = text(1, 64, "[a-zA-Z0-9_-]+")
BREAKPOINT = {"prompt_cache_breakpoint": mapping}
KIND = {"type": anything}  # `tagged` has checked it

TEXT = fields({**KIND, "text": text()}, BREAKPOINT)
IMAGE = fields(
    {
        **KIND,
        "image_url": fields(
            {"url": text(1)}, {"detail": one_of("auto", "low", "high", "original")}
        ),
    },
    BREAKPOINT,
)
AUDIO = fields(
    {**KIND, "input_audio": fields({"data": text(1), "format": one_of("wav", "mp3")})}, BREAKPOINT
)
FILE = fields(
    {**KIND, "file": fields({}, {"file_data": text(1), "file_id": text(1), "filename": text()})},
    BREAKPOINT,
)
REFUSAL = fields({**KIND, "refusal": text()})
USER_PARTS = {"text": TEXT, "image_url": IMAGE, "input_audio": AUDIO, "file": FILE}
CALL = fields(
    {**KIND, "id": text(1), "function": fields({"name": FUNCTION_NAME, "arguments": text()})}
)


def _content(*parts: str) -> Any:
    known = {**USER_PARTS, "refusal": REFUSAL}
    kinds = {part: known[part] for part in parts}
    return by_type({str: text(), list: items(tagged("type", kinds), 1)})


_SPEAKER = {"role": anything, "content": _content("text")}
_ASSISTANT = fields(
    {"role": anything},
    {
        "content": nullable(_content("text", "refusal")),
        "name": text(),
        "refusal": nullable(text()),
        "audio": nullable(mapping),
        "function_call": nullable(mapping),
        "annotations": nullable(items(mapping)),  # every answer has it, and you may send it back
        "tool_calls": items(tagged("type", {"function": CALL}), 1, 128),
    },
)


def _assistant(value: Any, path: str) -> None:
    _ASSISTANT(value, path)
    refuse(
        all(value.get(key) is None for key in ("content", "tool_calls", "refusal")),
        "Invalid value for 'content': expected a string, got null.",
        f"{path}.content",
    )


MESSAGE = tagged(
    "role",
    {
        "system": fields(_SPEAKER, {"name": text()}),
        "developer": fields(_SPEAKER, {"name": text()}),
        "user": fields({"role": anything, "content": _content(*USER_PARTS)}, {"name": text()}),
        "assistant": _assistant,
        "tool": fields({**_SPEAKER, "tool_call_id": text(1)}),
    },
)
FUNCTION = {"name": FUNCTION_NAME}
TOOL = tagged(
    "type",
    {
        "function": fields(
            {
                **KIND,
                "function": fields(
                    FUNCTION,
                    {"description": text(), "parameters": mapping, "strict": nullable(flag)},
                ),
            }
        ),
        "custom": fields({**KIND, "custom": mapping}),
    },
)
TOOL_CHOICE = by_type(
    {
        str: one_of("none", "auto", "required"),
        dict: tagged(
            "type",
            {
                "function": fields({**KIND, "function": fields(FUNCTION)}),
                "allowed_tools": fields(
                    {
                        **KIND,
                        "allowed_tools": fields(
                            {"mode": one_of("auto", "required"), "tools": items(mapping, 1, 128)}
                        ),
                    }
                ),
            },
        ),
    }
)
RESPONSE_FORMAT = tagged(
    "type",
    {
        "text": fields(KIND),
        "json_object": fields(KIND),
        "json_schema": fields(
            {
                **KIND,
                "json_schema": fields(
                    FUNCTION, {"description": text(), "schema": mapping, "strict": nullable(flag)}
                ),
            }
        ),
    },
)
STOP = by_type({str: text(1), list: items(text(1), 1, 4)})
# What both protocols accept.
SHARED = {
    "metadata": nullable(metadata),
    "moderation": nullable(mapping),
    "prompt_cache_key": nullable(text()),
    "prompt_cache_retention": nullable(one_of("in_memory", "24h")),
    "safety_identifier": nullable(text(most=128)),
    "store": nullable(flag),
    "stream": nullable(flag),
    "temperature": nullable(decimal(0, 2)),
    "top_logprobs": nullable(whole(0, 20)),
    "top_p": nullable(decimal(0, 1)),
    "user": text(),
}
TIERS = ("auto", "default", "flex", "scale", "priority", "fast")


def _integer(value: Any, path: str) -> None:
    kind_of(value, path, int)


CHAT = fields(
    {"messages": items(MESSAGE, 1), "model": text(1)},
    {
        **SHARED,
        "audio": nullable(mapping),
        "frequency_penalty": nullable(decimal(-2, 2)),
        "function_call": anything,
        "functions": items(mapping),
        "logit_bias": nullable(mapping),
        "logprobs": nullable(flag),
        "max_completion_tokens": nullable(whole(1)),
        "max_tokens": nullable(whole(1)),
        "modalities": nullable(items(one_of("text", "audio"), 1)),
        "n": nullable(whole(1, 128)),
        "parallel_tool_calls": flag,
        "prediction": nullable(mapping),
        "presence_penalty": nullable(decimal(-2, 2)),
        "prompt_cache_options": fields(
            {}, {"mode": one_of("implicit", "explicit"), "ttl": one_of("30m")}
        ),
        "reasoning_effort": nullable(text()),
        "response_format": RESPONSE_FORMAT,
        "seed": nullable(_integer),
        "service_tier": nullable(one_of(*TIERS)),
        "stop": nullable(STOP),
        "stream_options": nullable(
            fields({}, {"include_usage": flag, "include_obfuscation": flag})
        ),
        "tool_choice": TOOL_CHOICE,
        "tools": items(TOOL, 1, 128),
        "verbosity": nullable(one_of("low", "medium", "high")),
        "web_search_options": mapping,
    },
)
