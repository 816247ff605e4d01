"""The Responses API of the local model through the real `openai` package."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.responses import Response
from pydantic import BaseModel

import local_model
from local_model import server
from local_model.tokens import count_message_tokens, count_tokens

PASSAGES = "The museum opens at nine. A ticket costs 12 euros. Dogs stay outside."
TICKET = "How much is a ticket?"
TEXT = "A ticket costs 12 euros."
TOOL: Any = {
    "type": "function",
    "name": "look_up_order",
    "description": "Return the state of an order.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"order_id": {"type": "string"}},
        "required": ["order_id"],
        "additionalProperties": False,
    },
}
WHERE = "Where are orders A-1042 and A-1043?"


class Price(BaseModel):
    euros: float
    source: str


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("FIRST_TOKEN_SECONDS", "TOKEN_SECONDS"):
            patch.setattr(server, name, 0.0)
        running = local_model.start()
        yield running.base_url
        running.stop()


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=url, api_key="any", max_retries=0) as client:
        yield client


def create(client: OpenAI, **settings: Any) -> Any:
    whole = {"model": "gpt-6-luna", "instructions": PASSAGES, "input": TICKET, **settings}
    return client.responses.create(**whole)


def test_a_response_has_every_field_of_its_type(client: OpenAI) -> None:
    reply = create(client, metadata={"a": "b"}, user="ada", store=True)
    assert reply.output_text == TEXT
    assert set(reply.to_dict(exclude_unset=True)) >= set(Response.model_fields)
    assert (reply.status, reply.error, reply.incomplete_details) == ("completed", None, None)
    assert (reply.model, reply.instructions, reply.user) == ("gpt-6-luna", PASSAGES, "ada")
    assert reply.metadata == {"a": "b"}
    assert reply.reasoning.effort == "medium"
    assert [item.type for item in reply.output] == ["reasoning", "message"]
    assert reply.id == create(client, metadata={"a": "b"}, user="ada", store=True).id
    assert create(client, model="gpt-4o").model == "gpt-4o-2024-08-06"
    assert create(client, model="gpt-4o").reasoning is None


def test_usage_is_that_of_the_same_chat(client: OpenAI) -> None:
    usage = create(client).usage
    messages: Any = [{"role": "system", "content": PASSAGES}, {"role": "user", "content": TICKET}]
    assert usage.input_tokens == count_message_tokens(messages, "gpt-6-luna").tokens
    same = client.chat.completions.create(model="gpt-6-luna", messages=messages).usage
    assert same is not None
    assert usage.output_tokens == same.completion_tokens
    assert usage.total_tokens == same.total_tokens
    assert usage.output_tokens_details.reasoning_tokens > 0
    silent = create(client, reasoning={"effort": "none"})
    assert silent.usage.output_tokens_details.reasoning_tokens == 0
    assert [item.type for item in silent.output] == ["message"]
    long = "".join(f"Fact {n} is {n * n}. " for n in range(500))
    written, read = (create(client, instructions=long).usage.input_tokens_details for _ in "12")
    assert written.cached_tokens == 0
    assert written.cache_write_tokens == read.cached_tokens + read.cache_write_tokens >= 1024
    assert read.cached_tokens >= 1024


@pytest.mark.parametrize(
    "spoken",
    [
        [{"role": "user", "content": TICKET}],
        [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": TICKET}]}],
        [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": "Hello"},
            {
                "type": "message",
                "id": "msg_1",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "Hello.", "annotations": []}],
            },
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
            {"role": "assistant", "content": "And now?"},
            {"role": "user", "content": TICKET},
        ],
    ],
)
def test_every_form_of_input_is_read(client: OpenAI, spoken: Any) -> None:
    assert create(client, input=spoken).output_text == TEXT


def test_an_answer_goes_back_as_it_came(client: OpenAI) -> None:
    first = create(client, include=["reasoning.encrypted_content"])
    assert first.output[0].encrypted_content
    spoken = [{"role": "user", "content": TICKET}, *first.output]
    later = create(client, input=[*spoken, {"role": "user", "content": "And where do dogs stay?"}])
    assert later.output_text == "Dogs stay outside."


def test_images_and_files_are_counted_and_labelled(client: OpenAI) -> None:
    parts = [
        {"type": "input_text", "text": TICKET},
        {"type": "input_image", "detail": "auto", "image_url": "data:,"},
        {"type": "input_file", "file_id": "file-1"},
    ]
    reply = create(client, input=[{"role": "user", "content": parts}])
    assert reply.output_text == f"{TEXT} (The local model did not look at 1 image, 1 file.)"
    assert reply.usage.input_tokens == create(client).usage.input_tokens + 2 * 765


# --- streams ------------------------------------------------------------------------------


def test_a_stream_of_text_has_the_events_of_the_real_one_in_order(client: OpenAI) -> None:
    events = list(create(client, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    words = ["output_text.delta"] * 5
    thought = ["output_item.added", "output_item.done"]
    opened = ["output_item.added", "content_part.added"]
    closed = ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert kinds == ["created", "in_progress", *thought, *opened, *words, *closed]
    assert "".join(event.delta for event in events if event.type.endswith(".delta")) == TEXT
    assert events[0].response.status == "in_progress"
    assert events[0].response.output == []
    assert events[0].response.usage is None
    plain, streamed = create(client).to_dict(), events[-1].response.to_dict()
    for times in ("created_at", "completed_at"):
        assert plain.pop(times) <= streamed.pop(times) + 60
    assert streamed == plain


def test_a_stream_of_calls_has_their_arguments(client: OpenAI) -> None:
    events = list(create(client, input=WHERE, tools=[TOOL], stream=True))
    kinds = [event.type.removeprefix("response.") for event in events]
    argument = "function_call_arguments"
    one = ["output_item.added", *[f"{argument}.delta"] * 2, f"{argument}.done", "output_item.done"]
    assert kinds[4:] == [*one, *one, "completed"]
    done = [event for event in events if event.type.endswith("arguments.done")]
    assert [json.loads(event.arguments)["order_id"] for event in done] == ["A-1042", "A-1043"]
    items = events[-1].response.output[1:]
    assert [event.item_id for event in done] == [item.id for item in items]


def test_stream_and_parse_of_the_package_work(client: OpenAI, url: str) -> None:
    settings: Any = {"model": "gpt-6-luna", "instructions": PASSAGES, "input": TICKET}
    with client.responses.stream(text_format=Price, **settings) as stream:
        assert [e.type for e in stream][-1] == "response.completed"
        parsed = stream.get_final_response().output_parsed
    assert parsed == Price(euros=12, source=TEXT)
    assert client.responses.parse(text_format=Price, **settings).output_parsed == parsed

    async def asynchronously() -> Any:
        async with AsyncOpenAI(base_url=url, api_key="any") as other:
            stream: Any = await other.responses.create(**settings, stream=True)
            events = [event async for event in stream]
            reply = await other.responses.parse(text_format=Price, **settings)
            return events[-1].response.output_text, reply.output_parsed

    assert asyncio.run(asynchronously()) == (TEXT, parsed)


def test_a_limit_makes_it_incomplete(client: OpenAI) -> None:
    thoughts = count_tokens(PASSAGES.replace(". ", ".\n"), "gpt-6-luna").tokens
    reply = create(client, max_output_tokens=thoughts + 2)
    assert (reply.status, reply.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert TEXT.startswith(reply.output_text) and reply.output_text  # noqa: PT018
    assert reply.output[-1].status == "incomplete"
    assert reply.usage.output_tokens <= thoughts + 2
    last = list(create(client, max_output_tokens=16, stream=True))[-1]
    assert last.type == "response.incomplete"
    assert [item.type for item in last.response.output] == ["reasoning"]


# --- tools and forms ----------------------------------------------------------------------


@pytest.mark.parametrize("as_parts", [False, True])
def test_calls_and_their_outputs_make_a_round(client: OpenAI, *, as_parts: bool) -> None:
    first = create(client, input=WHERE, tools=[TOOL])
    made = [item for item in first.output if item.type == "function_call"]
    assert [json.loads(call.arguments)["order_id"] for call in made] == ["A-1042", "A-1043"]
    outputs = []
    for call, state in zip(made, ("shipped", "lost"), strict=True):
        told: Any = json.dumps({**json.loads(call.arguments), "state": state})
        told = [{"type": "input_text", "text": told}] if as_parts else told
        outputs.append({"type": "function_call_output", "call_id": call.call_id, "output": told})
    again = [{"role": "user", "content": WHERE}, *first.output, *outputs]
    told = create(client, input=again, tools=[TOOL]).output_text
    assert told == "order id: A-1042, state: shipped order id: A-1043, state: lost"


@pytest.mark.parametrize(
    ("choice", "called"),
    [
        ("auto", 2),
        ("none", 0),
        ("required", 2),
        ({"type": "function", "name": "look_up_order"}, 2),
        (
            {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [{"type": "function", "name": "look_up_order"}],
            },
            2,
        ),
    ],
)
def test_tool_choice_is_obeyed(client: OpenAI, choice: Any, called: int) -> None:
    reply = create(client, input=WHERE, tools=[TOOL], tool_choice=choice)
    assert [item.type for item in reply.output].count("function_call") == called
    single = create(client, input=WHERE, tools=[TOOL], parallel_tool_calls=False)
    assert [item.type for item in single.output].count("function_call") == 1


def test_a_json_object_is_one(client: OpenAI) -> None:
    form = {"format": {"type": "json_object"}}
    reply = create(client, input=f"As JSON: {TICKET}", text=form)
    assert json.loads(reply.output_text) == {"answer": TEXT}
