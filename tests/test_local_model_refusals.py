"""What the local model refuses, as OpenAI does: status, parameter, code and words, one by one."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types import embedding_create_params
from openai.types.chat import completion_create_params
from openai.types.responses import response_create_params

import local_model
from local_model.chat_shape import CHAT
from local_model.embeddings import EMBEDDINGS
from local_model.responses_shape import RESPONSE
from local_model.shape import ApiError, Check

USER: Any = {"role": "user", "content": "Hello"}
SCHEMA: Any = {
    "type": "object",
    "properties": {"a": {"type": "string"}},
    "required": ["a"],
    "additionalProperties": False,
}
FUNCTION: Any = {"name": "f", "parameters": SCHEMA}
TOOL: Any = {"type": "function", "function": FUNCTION}
CALL: Any = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLING: Any = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT: Any = {"role": "tool", "tool_call_id": "c1", "content": "x"}
MADE: Any = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
OUTPUT: Any = {"type": "function_call_output", "call_id": "c1", "output": "x"}
LUNA, ASTRA, FOUR = {"model": "gpt-6-luna"}, {"model": "gpt-6-astra"}, {"model": "gpt-4o"}
OTHER, LONG = {"tool_call_id": "c2"}, {"role": "user", "content": "word " * 50_000}
GONE, MANY = "model_not_found", "object_above_max_properties"
QUOTED = (
    "Function tools with reasoning_effort are not supported for gpt-6-luna in /v1/chat/completions."
    " To use function tools, use /v1/responses or set reasoning_effort to 'none'."
)


@pytest.fixture(scope="module")
def client() -> Iterator[OpenAI]:
    running = local_model.start()
    with OpenAI(base_url=running.base_url, api_key="any", max_retries=0) as client:
        yield client
    running.stop()


def refusal(client: OpenAI, path: str, body: Any) -> tuple[Any, Any, str]:
    with pytest.raises(openai.APIStatusError) as error:
        client.post(f"/{path}", body=body, cast_to=object)
    assert error.value.status_code in {400, 404}
    assert isinstance(error.value.body, dict)
    assert error.value.body.keys() == {"message", "type", "param", "code"}
    assert error.value.body["type"] == "invalid_request_error"
    return error.value.param, error.value.code, str(error.value.body["message"])


def form(schema: Any, **more: Any) -> Any:
    told = {"name": "x", "schema": schema, **more}
    return {"response_format": {"type": "json_schema", "json_schema": told}}


def said(*messages: Any) -> Any:
    return {"messages": [USER, *messages]}


EFFORT, VALUE, PARAMETER = "reasoning_effort", "unsupported_value", "unsupported_parameter"
TYPE, INVALID, MISSING = "invalid_type", "invalid_value", "missing_required_parameter"
GPT_5_4, O3 = {"model": "gpt-5.4"}, {"model": "o3"}
TOOLS: Any = {"tools": [TOOL]}
NAMED: Any = TOOLS | {"tool_choice": {"type": "function", "function": {"name": "g"}}}
BAD_NAME: Any = {"tools": [{"type": "function", "function": {"name": "a b"}}]}
BAD_SCHEMA: Any = {
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": 1}}}]
}
NAMELESS: Any = {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}
OPEN: Any = {"type": "object", "properties": {}}


def with_part(part: Any) -> Any:
    return form({"type": "object", "properties": {"a": part}})


@pytest.mark.parametrize(
    ("settings", "param", "code", "words"),
    [
        # MODELS.md: with an effort other than none
        (LUNA | {"temperature": 0.2}, "temperature", VALUE, "does not support 0.2"),
        (LUNA | {"top_p": 1}, "top_p", PARAMETER, "'top_p' is not supported with this model"),
        (LUNA | {"logprobs": True}, "logprobs", PARAMETER, "not supported"),
        (LUNA | {"top_logprobs": 2}, "top_logprobs", PARAMETER, "not supported"),
        ({"model": "gpt-5.6-sol", "temperature": 0}, "temperature", VALUE, "default (1) value"),
        # MODELS.md: function tools
        (LUNA | TOOLS, EFFORT, None, QUOTED),
        (LUNA | TOOLS | {EFFORT: "low"}, EFFORT, None, QUOTED),
        (LUNA | TOOLS | {EFFORT: None}, EFFORT, None, QUOTED),
        (ASTRA | TOOLS | {EFFORT: "none"}, "tools", None, "use /v1/responses"),
        ({"model": "gpt-6.1-sol", **TOOLS}, "tools", None, "for gpt-6.1-sol in /v1/chat"),
        (GPT_5_4 | TOOLS | {EFFORT: "low"}, EFFORT, None, "Please use /v1/responses"),
        # MODELS.md: limits and efforts
        (LUNA | {"max_tokens": 5}, "max_tokens", PARAMETER, "Use 'max_completion_tokens' instead"),
        (O3 | {"max_tokens": 5}, "max_tokens", PARAMETER, "not supported with this model"),
        (LUNA | {EFFORT: "minimal"}, EFFORT, VALUE, "does not support 'minimal'"),
        (LUNA | {EFFORT: "huge"}, EFFORT, INVALID, "'huge'"),
        (FOUR | {EFFORT: "low"}, EFFORT, PARAMETER, "not supported with this model"),
        (O3 | {EFFORT: "none"}, EFFORT, VALUE, "does not support 'none'"),
        (LUNA | {"stop": "x"}, "stop", PARAMETER, "not supported"),
        # models
        ({"model": "o1"}, "model", GONE, "shut down on 2026-10-23"),
        ({"model": "gpt-4-turbo-2024-04-09"}, "model", GONE, "2026-10-23"),
        ({"model": "no-such-model"}, "model", GONE, "does not exist or you do not have access"),
        ({"model": "openai/gpt-4o"}, "model", GONE, "does not exist"),
        ({"model": "GPT-4o"}, "model", GONE, "does not exist"),
        ({"model": "text-embedding-3-small"}, "model", None, "an embedding model"),
        # form
        ({"foo": 1}, "foo", "unknown_parameter", "Unknown parameter: 'foo'."),
        (said(USER | {"x": 1}), "messages[1].x", "unknown_parameter", "'messages[1].x'"),
        ({"messages": []}, "messages", "empty_array", "empty array"),
        ({"messages": "Hello"}, "messages", TYPE, "expected an array, but got a string"),
        ({"messages": ["Hello"]}, "messages[0]", TYPE, "expected an object"),
        ({"messages": None}, "messages", TYPE, "got null"),
        (said({"role": "robot"}), "messages[1].role", INVALID, "'robot'. Supported values"),
        (said({"role": "user"}), "messages[1].content", MISSING, "Missing required parameter"),
        (said({"role": "user", "content": 7}), "messages[1].content", TYPE, "an integer"),
        (said({"role": "assistant"}), "messages[1].content", None, "a string, got null"),
        ({"temperature": "hot"}, "temperature", TYPE, "expected a decimal"),
        ({"temperature": True}, "temperature", TYPE, "got a boolean"),
        ({"temperature": 2.5}, "temperature", "decimal_above_max_value", "<= 2"),
        ({"top_p": -0.1}, "top_p", "decimal_below_min_value", ">= 0"),
        ({"max_tokens": 0}, "max_tokens", "integer_below_min_value", ">= 1"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens", TYPE, "an integer"),
        ({"top_logprobs": 21}, "top_logprobs", "integer_above_max_value", "<= 20"),
        ({"stop": list("abcde")}, "stop", "array_above_max_length", "maximum length 4"),
        ({"metadata": dict.fromkeys("abcdefghijklmnopq", "")}, "metadata", MANY, "at most 16"),
        ({"metadata": {"k" * 65: ""}}, "metadata key", "string_above_max_length", "64"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k", "string_above_max_length", "512"),
        ({"metadata": {"k": 1}}, "metadata.k", TYPE, "a string"),
        ({"stream_options": {}}, "stream_options", None, "only allowed when 'stream'"),
        # tools, and the order of messages
        ({"tools": []}, "tools", "empty_array", "empty"),
        ({"tools": [TOOL] * 129}, "tools", "array_above_max_length", "128"),
        (BAD_NAME, "tools[0].function.name", INVALID, "pattern '^[a-zA-Z0-9_-]+$'"),
        (BAD_SCHEMA, "tools[0].function.parameters", "invalid_function_parameters", "'f'"),
        ({"tool_choice": "auto"}, "tool_choice", None, "only allowed when 'tools'"),
        (NAMED, "tool_choice", None, "'g' not found"),
        (said(RESULT), "messages.[1].role", None, "must be a response to a preceeding message"),
        (said(CALLING), "messages.[1].role", None, "did not have response messages: c1"),
        (said(CALLING, USER), "messages.[1].role", None, "must be followed by tool messages"),
        (said(CALLING, RESULT | OTHER), "messages.[2].tool_call_id", None, "of 'c2' not found"),
        # structured output
        ({"response_format": {"type": "xml"}}, "response_format.type", INVALID, "'xml'"),
        ({"response_format": {"type": "json_object"}}, "messages", None, "the word 'json'"),
        (NAMELESS, "response_format.json_schema.name", MISSING, "name"),
        (form({"type": "string"}), "response_format", None, "of 'type: \"object\"'"),
        (form(OPEN, strict=True), "response_format", None, "'additionalProperties' is required"),
        (form(SCHEMA | {"required": []}, strict=True), "response_format", None, "Missing 'a'"),
        (with_part({"type": "colour"}), None, None, "unknown type"),
        (with_part({"$ref": "#/$defs/Missing"}), None, None, "has no '#/$defs/Missing'"),
        (with_part({"type": "array"}), None, None, "lacks a part"),
        (with_part({"$ref": "#/properties/a"}), None, None, "refers to itself"),
        (with_part({"type": "array", "items": {"$ref": "#"}}), None, None, "nested too deeply"),
        (with_part("string"), None, None, "not an object"),
        # known to OpenAI, and beyond this model
        ({"n": 2}, "n", None, "only one answer"),
        ({"logprobs": True}, "logprobs", None, "no token probabilities"),
        ({"modalities": ["text", "audio"]}, "modalities", None, "no audio"),
        ({"web_search_options": {}}, "web_search_options", None, "no access to the web"),
        ({"functions": [FUNCTION]}, "functions", None, "deprecated"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0]", None, "only calls functions"),
        (said(LONG), "messages", "context_length_exceeded", "at most 200000"),
    ],
)
def test_a_chat_completion_is_refused(
    client: OpenAI, settings: Any, param: str | None, code: str | None, words: str
) -> None:
    body = {"model": "gpt-4o", "messages": [USER], **settings}
    got = refusal(client, "chat/completions", body)
    assert got[:2] == (param, code)
    assert words in got[2]


def text_form(**settings: Any) -> Any:
    return {"text": {"format": settings}}


STRICT = text_form(type="json_schema", name="x", schema={}, strict=True)
CHAT_PART: Any = {"input": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}


@pytest.mark.parametrize(
    ("settings", "param", "code", "words"),
    [
        ({"temperature": 0.2}, "temperature", VALUE, "does not support 0.2"),
        ({"top_p": 0.5}, "top_p", PARAMETER, "not supported with this model"),
        ({"top_logprobs": 1}, "top_logprobs", PARAMETER, "not supported"),
        ({"reasoning": {"effort": "minimal"}}, "reasoning.effort", VALUE, "minimal"),
        (FOUR | {"reasoning": {"effort": "low"}}, "reasoning.effort", PARAMETER, "not supported"),
        ({"max_output_tokens": 15}, "max_output_tokens", "integer_below_min_value", ">= 16"),
        ({"max_tokens": 15}, "max_tokens", "unknown_parameter", "Unknown parameter"),
        ({EFFORT: "low"}, EFFORT, PARAMETER, "has moved to 'reasoning.effort'"),
        ({"input": None}, "input", TYPE, "got null"),
        ({"input": []}, "input", "empty_array", "empty"),
        ({"input": [{"role": "user"}]}, "input[0].content", MISSING, "content"),
        (CHAT_PART, "input[0].content[0].type", INVALID, "Supported values are: 'input_text'"),
        (TOOLS, "tools[0].function", "unknown_parameter", "tools[0].function"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", MISSING, "name"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", None, "only functions"),
        ({"tool_choice": "required"}, "tool_choice", None, "must be specified with 'tools'"),
        ({"input": [USER, OUTPUT]}, "input", None, "No tool call found for function call output"),
        ({"input": [USER, MADE]}, "input", None, "No tool output found for function call c1."),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", None, "nothing is stored"),
        ({"input": [{"type": "mcp_call"}]}, "input[0]", None, "has no tool"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", None, "send the whole"),
        ({"conversation": "conv_1"}, "conversation", None, "nothing is stored here"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", None, "nothing is stored here"),
        ({"background": True}, "background", None, "answers at once"),
        (text_form(type="json_object"), "input", None, "the word 'json'"),
        (STRICT, "text.format.schema", "invalid_json_schema", "Invalid schema"),
        ({"include": ["everything"]}, "include[0]", INVALID, "'everything'"),
        ({"model": "gpt-4.1-nano"}, "model", GONE, "shut down"),
    ],
)
def test_a_response_is_refused(
    client: OpenAI, settings: Any, param: str, code: str | None, words: str
) -> None:
    body = {"model": "gpt-6-luna", "input": "Hello", **settings}
    got = refusal(client, "responses", body)
    assert got[:2] == (param, code)
    assert words in got[2]


@pytest.mark.parametrize(
    ("settings", "param", "words"),
    [
        ({"input": ""}, "input", "too short"),
        ({"input": []}, "input", "empty array"),
        ({"input": ["fine", ""]}, "input[1]", "too short"),
        ({"input": [1, 2]}, "input[0]", "it embeds texts, not tokens"),
        ({"input": "word " * 9000}, "input", "maximum context length is 8192"),
        ({"dimensions": 0}, "dimensions", ">= 1"),
        ({"dimensions": 1537}, "dimensions", "<= 1536"),
        ({"model": "gpt-4o"}, "model", "not an embedding model"),
    ],
)
def test_an_embedding_is_refused(client: OpenAI, settings: Any, param: str, words: str) -> None:
    body = {"model": "text-embedding-3-small", "input": "fine", **settings}
    got = refusal(client, "embeddings", body)
    assert got[0] == param
    assert words in got[2]


@pytest.mark.parametrize(
    ("path", "settings"),
    [
        ("chat/completions", LUNA | {"temperature": 1, "top_p": None, "logprobs": None}),
        ("chat/completions", LUNA | {"reasoning_effort": "none", "temperature": 0, "top_p": 0.1}),
        ("chat/completions", LUNA | {"reasoning_effort": "none", "tools": [TOOL]}),
        ("chat/completions", {"model": "gpt-5.4", "tools": [TOOL]}),
        ("chat/completions", FOUR | {"temperature": 0, "top_p": 0.1, "stop": "x", "max_tokens": 1}),
        (
            "chat/completions",
            FOUR | {"seed": 1, "user": "u", "presence_penalty": 1, "store": True, "metadata": {}},
        ),
        (
            "chat/completions",
            LUNA | {"service_tier": "flex", "verbosity": "low", "prompt_cache_key": "k"},
        ),
        ("responses", ASTRA | {"tools": [FUNCTION | {"type": "function"}]}),
        ("responses", LUNA | {"reasoning": {"effort": "none"}, "temperature": 0, "top_p": 0.1}),
        ("responses", LUNA | {"reasoning": {"effort": "max", "summary": "auto"}, "store": True}),
        ("responses", LUNA | {"truncation": "auto", "text": {"verbosity": "low"}, "include": []}),
    ],
)
def test_what_the_real_one_takes_is_taken(client: OpenAI, path: str, settings: Any) -> None:
    said = {"messages": [USER]} if path == "chat/completions" else {"input": "Hello"}
    assert client.post(f"/{path}", body={**said, **settings}, cast_to=object)


def known(check: Check, keys: set[str]) -> set[str]:
    """Return those of the keys that a shape does not call unknown, and one that it must."""
    found = set()
    for key in keys | {"made_up"}:
        try:
            check({key: None}, "")
        except ApiError as error:
            if error.code == "unknown_parameter":
                continue
        found.add(key)
    return found


def test_every_parameter_of_the_openai_package_is_known() -> None:
    owners: list[tuple[Check, Any, int]] = [
        (CHAT, completion_create_params.CompletionCreateParamsStreaming, 30),
        (RESPONSE, response_create_params.ResponseCreateParamsStreaming, 30),
        (EMBEDDINGS, embedding_create_params.EmbeddingCreateParams, 5),
    ]
    for check, owner, least in owners:
        keys = set(owner.__annotations__)
        assert len(keys) >= least
        assert known(check, keys) == keys
