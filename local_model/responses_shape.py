"""The shape of a Responses API request: every parameter in `openai` 3.57 and its type."""

from typing import Any

from local_model.chat_shape import BREAKPOINT, FUNCTION_NAME, KIND, SHARED, TEXT, TIERS
from local_model.shape import (
    ApiError,
    anything,
    by_type,
    fields,
    flag,
    items,
    kind_of,
    mapping,
    nullable,
    one_of,
    tagged,
    text,
    whole,
)

STATUS = {"status": nullable(one_of("in_progress", "completed", "incomplete"))}
DETAIL = one_of("low", "high", "auto", "original")
IMAGE = fields(
    KIND,
    {"detail": DETAIL, "image_url": nullable(text(1)), "file_id": nullable(text(1)), **BREAKPOINT},
)
FILE = fields(
    KIND,
    {
        "detail": DETAIL,
        "file_data": text(1),
        "file_id": nullable(text(1)),
        "file_url": text(1),
        "filename": text(),
        **BREAKPOINT,
    },
)
OUTPUT_TEXT = fields(
    {**KIND, "text": text()}, {"annotations": items(mapping), "logprobs": anything}
)
REFUSAL = fields({**KIND, "refusal": text()})
INPUT_PARTS = {"input_text": TEXT, "input_image": IMAGE, "input_file": FILE}
OUTPUT_PARTS = {"output_text": OUTPUT_TEXT, "refusal": REFUSAL}


def _message(value: Any, path: str) -> None:
    """Accept a message of any role; the types of its parts depend on the role."""
    kind_of(value, path, dict)
    parts = OUTPUT_PARTS if value.get("role") == "assistant" else INPUT_PARTS
    fields(
        {
            "role": one_of("assistant", "system", "developer", "user"),
            "content": by_type({str: text(), list: items(tagged("type", parts))}),
        },
        {**KIND, **STATUS, "id": nullable(text()), "phase": nullable(text())},
    )(value, path)


_IDENTITY = {**STATUS, "id": nullable(text()), "caller": nullable(mapping)}
FUNCTION_CALL = fields(
    {**KIND, "call_id": text(1, 64), "name": FUNCTION_NAME, "arguments": text()},
    {**_IDENTITY, "namespace": nullable(text()), "async": nullable(flag)},
)
CALL_OUTPUT = fields(
    {
        **KIND,
        "call_id": text(1, 64),
        "output": by_type({str: text(), list: items(tagged("type", INPUT_PARTS))}),
    },
    {**_IDENTITY, "namespace": nullable(text()), "name": nullable(text())},
)
REASONING = fields(
    {**KIND, "id": text(), "summary": items(mapping)},
    {**STATUS, "content": nullable(items(mapping)), "encrypted_content": nullable(text())},
)
NOTHING_STORED = "nothing is stored here: send the whole conversation as input."


def _reference(_: Any, path: str) -> None:
    raise ApiError(f"The local model cannot follow an item_reference: {NOTHING_STORED}", path)


# The other items belong to OpenAI's own tools, which the local model does not have.
_THEIRS = (
    "file_search_call computer_call computer_call_output web_search_call tool_search_call "
    "tool_search_output additional_tools configuration_update compaction image_generation_call "
    "code_interpreter_call local_shell_call local_shell_call_output shell_call shell_call_output "
    "apply_patch_call apply_patch_call_output mcp_list_tools mcp_approval_request "
    "mcp_approval_response mcp_call custom_tool_call_output custom_tool_call compaction_trigger "
    "program program_output"
)


def _theirs(value: Any, path: str) -> None:
    kind = value["type"]
    raise ApiError(f"The local model has no tool that an item of type '{kind}' belongs to.", path)


ITEM = tagged(
    "type",
    {
        "message": _message,
        "function_call": FUNCTION_CALL,
        "function_call_output": CALL_OUTPUT,
        "reasoning": REASONING,
        "item_reference": _reference,
        **dict.fromkeys(_THEIRS.split(), _theirs),
    },
    default="message",
)
FUNCTION_TOOL = fields(
    {**KIND, "name": FUNCTION_NAME},
    {
        "parameters": nullable(mapping),
        "strict": nullable(flag),
        "description": nullable(text()),
        "allowed_callers": nullable(items(one_of("direct", "programmatic"))),
        "defer_loading": flag,
        "output_schema": nullable(mapping),
        "async": flag,
    },
)


def _tool(value: Any, path: str) -> None:
    kind_of(value, path, dict)
    kind = value.get("type", "function")
    kind_of(kind, f"{path}.type", str)
    if kind != "function":
        told = f"The local model cannot do this: it has no tool '{kind[:100]}', only functions."
        raise ApiError(told, f"{path}.type")
    fields({"type": anything}, dict.fromkeys(value, anything))(value, path)
    FUNCTION_TOOL(value, path)


# Choosing one of OpenAI's own tools passes here; it is refused later, as it is not in `tools`.
_CHOICES = (
    "custom mcp apply_patch shell programmatic_tool_calling file_search web_search_preview "
    "computer computer_use_preview computer_use web_search_preview_2025_03_11 image_generation "
    "code_interpreter"
)
TOOL_CHOICE = by_type(
    {
        str: one_of("none", "auto", "required"),
        dict: tagged(
            "type",
            {
                "function": fields({**KIND, "name": FUNCTION_NAME}),
                "allowed_tools": fields(
                    {**KIND, "mode": one_of("auto", "required"), "tools": items(mapping, 1, 128)}
                ),
                **dict.fromkeys(_CHOICES.split(), mapping),
            },
        ),
    }
)
FORMAT = tagged(
    "type",
    {
        "text": fields(KIND),
        "json_object": fields(KIND),
        "json_schema": fields(
            {**KIND, "name": FUNCTION_NAME, "schema": mapping},
            {"description": nullable(text()), "strict": nullable(flag)},
        ),
    },
)
REASONING_OPTIONS = fields(
    {},
    {
        "effort": nullable(text()),
        "summary": nullable(one_of("auto", "concise", "detailed")),
        "generate_summary": nullable(one_of("auto", "concise", "detailed")),
        "context": nullable(one_of("auto", "current_turn", "all_turns")),
        "mode": nullable(text()),
    },
)
INCLUDES = (
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
)
RESPONSE = fields(
    {"model": text(1), "input": by_type({str: text(), list: items(ITEM, 1)})},
    {
        **SHARED,
        "access_programs": mapping,
        "background": nullable(flag),
        "background_options": mapping,
        "context_management": nullable(items(mapping)),
        "conversation": nullable(by_type({str: text(1), dict: mapping})),
        "image": fields({}, {"context_compression": one_of("auto", "enabled", "disabled")}),
        "include": nullable(items(one_of(*INCLUDES))),
        "instructions": nullable(text()),
        "max_output_tokens": nullable(whole(16)),
        "max_tool_calls": nullable(whole(1)),
        "parallel_tool_calls": nullable(flag),
        "previous_response_id": nullable(text(1)),
        "prompt": nullable(mapping),
        "prompt_cache_options": fields(
            {},
            {
                "mode": one_of("implicit", "explicit"),
                "ttl": one_of("30m", "12h"),
                "prewarm": flag,
                "comparison_response_id": nullable(text(1)),
            },
        ),
        "reasoning": nullable(REASONING_OPTIONS),
        "service_tier": nullable(one_of(*TIERS, "ultrafast")),
        "stream_options": nullable(fields({}, {"include_obfuscation": flag})),
        "text": fields(
            {}, {"format": FORMAT, "verbosity": nullable(one_of("low", "medium", "high"))}
        ),
        "tool_choice": TOOL_CHOICE,
        "tools": items(_tool, 0, 128),
        "truncation": nullable(one_of("auto", "disabled")),
    },
)
