"""What the local model refuses, as OpenAI does: status, parameter, code and words, one by one."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
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


@pytest.mark.parametrize(
    ("settings", "param", "code", "words"),
    [
        # MODELS.md: with an effort other than none
        (LUNA | {"temperature": 0.2}, "temperature", "unsupported_value", "does not support 0.2"),
        (LUNA | {"top_p": 1}, "top_p", "unsupported_parameter", "'top_p' is not supported"),
        (LUNA | {"logprobs": True}, "logprobs", "unsupported_parameter", "not supported"),
        (LUNA | {"top_logprobs": 2}, "top_logprobs", "unsupported_parameter", "not supported"),
        ({"model": "gpt-5.6-sol", "temperature": 0}, "temperature", "unsupported_value", "(1)"),
        # MODELS.md: function tools
        (LUNA | {"tools": [TOOL]}, "reasoning_effort", None, QUOTED),
        (LUNA | {"tools": [TOOL], "reasoning_effort": "low"}, "reasoning_effort", None, QUOTED),
        (LUNA | {"tools": [TOOL], "reasoning_effort": None}, "reasoning_effort", None, QUOTED),
        (ASTRA | {"tools": [TOOL], "reasoning_effort": "none"}, "tools", None, "use /v1/responses"),
        ({"model": "gpt-6.1-sol", "tools": [TOOL]}, "tools", None, "for gpt-6.1-sol in /v1/chat"),
        (
            {"model": "gpt-5.4", "tools": [TOOL], "reasoning_effort": "low"},
            "reasoning_effort",
            None,
            "Please use /v1/responses",
        ),
        # MODELS.md: limits and efforts
        (LUNA | {"max_tokens": 5}, "max_tokens", "unsupported_parameter", "max_completion_tokens"),
        ({"model": "o3", "max_tokens": 5}, "max_tokens", "unsupported_parameter", "Use"),
        (
            LUNA | {"reasoning_effort": "minimal"},
            "reasoning_effort",
            "unsupported_value",
            "does not support 'minimal'",
        ),
        (LUNA | {"reasoning_effort": "huge"}, "reasoning_effort", "invalid_value", "'huge'"),
        (FOUR | {"reasoning_effort": "low"}, "reasoning_effort", "unsupported_parameter", "not"),
        ({"model": "o3", "reasoning_effort": "none"}, "reasoning_effort", "unsupported_value", ""),
        (LUNA | {"stop": "x"}, "stop", "unsupported_parameter", "not supported"),
        # models
        ({"model": "o1"}, "model", "model_not_found", "shut down on 2026-10-23"),
        ({"model": "gpt-4-turbo-2024-04-09"}, "model", "model_not_found", "2026-10-23"),
        *(
            ({"model": name}, "model", "model_not_found", "does not exist or you do not have")
            for name in ("no-such-model", "openai/gpt-4o", "GPT-4o", "gpt-4o-huge")
        ),
        ({"model": "text-embedding-3-small"}, "model", None, "an embedding model"),
        # form
        ({"foo": 1}, "foo", "unknown_parameter", "Unknown parameter: 'foo'."),
        (said(USER | {"x": 1}), "messages[1].x", "unknown_parameter", "'messages[1].x'"),
        ({"messages": []}, "messages", "empty_array", "empty array"),
        ({"messages": "Hello"}, "messages", "invalid_type", "expected an array, but got a string"),
        ({"messages": ["Hello"]}, "messages[0]", "invalid_type", "expected an object"),
        ({"messages": None}, "messages", "invalid_type", "got null"),
        (said({"role": "robot"}), "messages[1].role", "invalid_value", "'robot'. Supported values"),
        (said({"role": "user"}), "messages[1].content", "missing_required_parameter", "Missing"),
        (said({"role": "user", "content": 7}), "messages[1].content", "invalid_type", "integer"),
        (said({"role": "assistant"}), "messages[1].content", None, "expected a string, got null"),
        ({"temperature": "hot"}, "temperature", "invalid_type", "expected a decimal"),
        ({"temperature": True}, "temperature", "invalid_type", "got a boolean"),
        ({"temperature": 2.5}, "temperature", "decimal_above_max_value", "<= 2"),
        ({"top_p": -0.1}, "top_p", "decimal_below_min_value", ">= 0"),
        ({"max_tokens": 0}, "max_tokens", "integer_below_min_value", ">= 1"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens", "invalid_type", "an integer"),
        ({"top_logprobs": 21}, "top_logprobs", "integer_above_max_value", "<= 20"),
        ({"stop": list("abcde")}, "stop", "array_above_max_length", "maximum length 4"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata", None, "at most 16"),
        ({"metadata": {"k" * 65: ""}}, "metadata key", "string_above_max_length", "64"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k", "string_above_max_length", "512"),
        ({"metadata": {"k": 1}}, "metadata.k", "invalid_type", "a string"),
        ({"stream_options": {}}, "stream_options", None, "only allowed when 'stream'"),
        # tools, and the order of messages
        ({"tools": []}, "tools", "empty_array", "empty"),
        ({"tools": [TOOL] * 129}, "tools", "array_above_max_length", "128"),
        (
            {"tools": [{"type": "function", "function": {"name": "a b"}}]},
            "tools[0].function.name",
            "invalid_value",
            "pattern '^[a-zA-Z0-9_-]+$'",
        ),
        ({"tool_choice": "auto"}, "tool_choice", None, "only allowed when 'tools'"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice",
            None,
            "'g' not found",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": 1}}}]},
            "tools[0].function.parameters",
            "invalid_function_parameters",
            "Invalid schema for function 'f'",
        ),
        (said(RESULT), "messages.[1].role", None, "must be a response to a preceeding message"),
        (said(CALLING), "messages.[1].role", None, "did not have response messages: c1"),
        (said(CALLING, USER), "messages.[1].role", None, "must be followed by tool messages"),
        (
            said(CALLING, RESULT | {"tool_call_id": "c2"}),
            "messages.[2].tool_call_id",
            None,
            "'tool_call_id' of 'c2' not found",
        ),
        # structured output
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value", "'xml'"),
        ({"response_format": {"type": "json_object"}}, "messages", None, "the word 'json'"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
            "response_format.json_schema.name",
            "missing_required_parameter",
            "name",
        ),
        (form({"type": "string"}), "response_format", None, "of 'type: \"object\"'"),
        (
            form({"type": "object", "properties": {}}, strict=True),
            "response_format",
            None,
            "'additionalProperties' is required to be supplied and to be false",
        ),
        (form(SCHEMA | {"required": []}, strict=True), "response_format", None, "Missing 'a'"),
        *(
            (form({"type": "object", "properties": {"a": part}}), None, None, words)
            for part, words in (
                ({"type": "colour"}, "unknown type"),
                ({"$ref": "#/$defs/Missing"}, "has no '#/$defs/Missing'"),
                ({"type": "array"}, "lacks a part"),
                ({"$ref": "#/properties/a"}, "refers to itself"),
                ({"type": "array", "items": {"$ref": "#"}}, "nested too deeply"),
                ("string", "no object"),
            )
        ),
        # known to OpenAI, and beyond this model
        ({"n": 2}, "n", None, "one answer only"),
        ({"logprobs": True}, "logprobs", None, "no probabilities"),
        ({"modalities": ["text", "audio"]}, "modalities", None, "no audio"),
        ({"web_search_options": {}}, "web_search_options", None, "no access to the web"),
        ({"functions": [FUNCTION]}, "functions", None, "deprecated"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0]", None, "functions only"),
        (
            {"messages": [{"role": "user", "content": "word " * 50_000}]},
            "messages",
            "context_length_exceeded",
            "at most 200000",
        ),
    ],
)
def test_a_chat_completion_is_refused(
    client: OpenAI, settings: Any, param: str | None, code: str | None, words: str
) -> None:
    body = {"model": "gpt-4o", "messages": [USER], **settings}
    got = refusal(client, "chat/completions", body)
    assert got[0] == param
    assert got[1] == code or (code is None and got[1] == "object_above_max_properties")
    assert words in got[2]


@pytest.mark.parametrize(
    ("settings", "param", "code", "words"),
    [
        ({"temperature": 0.2}, "temperature", "unsupported_value", "does not support 0.2"),
        ({"top_p": 0.5}, "top_p", "unsupported_parameter", "not supported with this model"),
        ({"top_logprobs": 1}, "top_logprobs", "unsupported_parameter", "not supported"),
        ({"reasoning": {"effort": "minimal"}}, "reasoning.effort", "unsupported_value", "minimal"),
        (FOUR | {"reasoning": {"effort": "low"}}, "reasoning.effort", "unsupported_parameter", ""),
        ({"max_output_tokens": 15}, "max_output_tokens", "integer_below_min_value", ">= 16"),
        ({"max_tokens": 15}, "max_tokens", "unknown_parameter", "Unknown parameter"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "unsupported_parameter", "has moved to"),
        ({"input": None}, "input", "invalid_type", "got null"),
        ({"input": []}, "input", "empty_array", "empty"),
        ({"input": [{"role": "user"}]}, "input[0].content", "missing_required_parameter", ""),
        (
            {"input": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
            "input[0].content[0].type",
            "invalid_value",
            "Supported values are: 'input_text'",
        ),
        ({"tools": [TOOL]}, "tools[0].function", "unknown_parameter", "tools[0].function"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "missing_required_parameter", ""),
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
        ({"text": {"format": {"type": "json_object"}}}, "input", None, "the word 'json'"),
        (
            {
                "text": {
                    "format": {"type": "json_schema", "name": "x", "schema": {}, "strict": True}
                }
            },
            "text.format.schema",
            "invalid_json_schema",
            "Invalid schema",
        ),
        ({"include": ["everything"]}, "include[0]", "invalid_value", "'everything'"),
        ({"model": "gpt-4.1-nano"}, "model", "model_not_found", "shut down"),
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
    from openai.types import embedding_create_params

    for check, owner in (
        (CHAT, completion_create_params.CompletionCreateParamsStreaming),
        (RESPONSE, response_create_params.ResponseCreateParamsStreaming),
        (EMBEDDINGS, embedding_create_params.EmbeddingCreateParams),
    ):
        keys = set(owner.__annotations__)
        for base in owner.__orig_bases__:  # type: ignore[attr-defined]
            keys |= set(getattr(base, "__annotations__", {}))
        assert len(keys) >= 5
        assert known(check, keys) == keys
