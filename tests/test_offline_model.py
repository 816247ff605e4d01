"""The offline model through the real `openai` package, plain and wrapped by Langfuse."""

import asyncio
import base64
import json
import math
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import httpx2
import langfuse.openai  # noqa: F401  wraps the openai package, for all tests in one order
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.resources import Embeddings
from openai.resources.chat import Completions
from pydantic import BaseModel, Field

from common import llm, offline_model
from common.offline_model import NOTHING_TO_READ, OfflineTransport
from common.settings import read_settings
from common.tokens import count_message_tokens, count_tokens

TOP = Path(__file__).resolve().parents[1]
URL = "https://offline.invalid/v1"
PASSAGES = "The museum opens at nine. A ticket costs 12 euros. Dogs stay outside."
ABSTAIN = 'If the passages do not contain the answer, say "Ask at the desk. We know."'
ORDER_TOOL: Any = {
    "type": "function",
    "function": {
        "name": "look_up_order",
        "description": "Return the state of an order.",
        "parameters": {
            "type": "object",
            "properties": {"order_id": {"type": "string"}},
            "required": ["order_id"],
        },
    },
}
BOOK_TOOL: Any = {
    "type": "function",
    "function": {
        "name": "book_table",
        "description": "Book a table in a restaurant.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "guests": {"type": "integer"},
                "meal": {"type": "string", "enum": ["lunch", "dinner"]},
                "outside": {"type": "boolean"},
            },
            "required": ["city", "guests"],
        },
    },
}


@pytest.fixture(autouse=True)
def fast_and_untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_TOKEN_SECONDS", "TOKEN_SECONDS", "EMBEDDING_SECONDS"):
        monkeypatch.setattr(offline_model, name, 0.0)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LANGFUSE_TRACING_ENABLED", "false")
    monkeypatch.setenv("LANGFUSE_PUBLIC_KEY", "pk-lf-test")
    monkeypatch.setenv("LANGFUSE_SECRET_KEY", "sk-lf-test")


def plain_client() -> OpenAI:
    http = httpx2.Client(transport=OfflineTransport())
    return OpenAI(api_key="offline", base_url=URL, http_client=http)


def async_client(transport: OfflineTransport | None = None) -> AsyncOpenAI:
    http = httpx2.AsyncClient(transport=transport or OfflineTransport())
    return AsyncOpenAI(api_key="offline", base_url=URL, http_client=http)


@pytest.fixture(params=["plain", "langfuse"])
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAI]:
    if request.param == "plain":  # undo what the import of langfuse.openai wraps
        for owner, name in (
            (Completions, "create"),
            (Completions, "parse"),
            (Embeddings, "create"),
        ):
            monkeypatch.setattr(owner, name, owner.__dict__[name].__wrapped__)
    with plain_client() if request.param == "plain" else llm.openai_client() as client:
        yield client


def chat(system: str, user: str) -> Any:
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def ask(client: OpenAI, system: str, user: str, **settings: Any) -> str:
    settings = {"model": "gpt-4o-mini", "messages": chat(system, user), **settings}
    return str(client.chat.completions.create(**settings).choices[0].message.content)


# --- answers ------------------------------------------------------------------------------


def test_answer_comes_from_the_prompt_and_changes_with_it(client: OpenAI) -> None:
    question = "How much is a ticket?"
    assert ask(client, PASSAGES, question) == "A ticket costs 12 euros."
    assert ask(client, PASSAGES.replace("12", "15"), question) == "A ticket costs 15 euros."
    assert "euros" not in ask(client, PASSAGES.replace("A ticket costs 12 euros.", ""), question)


def test_with_nothing_to_read_it_says_so(client: OpenAI) -> None:
    assert ask(client, "You are a guide. Answer briefly.", "Who built it?") == NOTHING_TO_READ


def test_it_abstains_only_where_it_is_told_to(client: OpenAI) -> None:
    question = "Is there a cloakroom?"
    assert ask(client, PASSAGES, question) in PASSAGES
    assert ask(client, f"{ABSTAIN}\n{PASSAGES}", question) == "Ask at the desk. We know."
    assert ask(client, f"{ABSTAIN}\n{PASSAGES}", "When does the museum open?") in PASSAGES


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("When the context does not cover it, answer 'I don't know'.", "I don't know"),
        ("Say “No idea.” if you cannot find the answer.", "No idea."),
        ("If there is no answer in the text, say that you do not know.", "I do not know."),
    ],
)
def test_it_abstains_in_the_words_of_the_prompt(instruction: str, expected: str) -> None:
    assert ask(plain_client(), f"{instruction} {PASSAGES}", "Is there a lift?") == expected


def test_a_fact_with_a_condition_is_no_instruction_to_abstain() -> None:
    fact = "If your size is not in stock, write to us."
    assert ask(plain_client(), fact, "Is there a lift?") == fact


def test_instructions_are_no_answers() -> None:
    system = f"You are a guide for dogs. Answer politely about dogs.\n{PASSAGES}"
    assert ask(plain_client(), system, "What about dogs?") == "Dogs stay outside."


def test_words_can_mislead_it() -> None:
    facts = "The ticket office is red. Admission costs 12 euros."
    assert (
        ask(plain_client(), facts, "What is the price of a ticket?") == "The ticket office is red."
    )


def test_a_rare_word_counts_more_than_common_ones() -> None:
    facts = " ".join(f"City bus {n} is late." for n in range(8)) + " The lift is broken."
    assert (
        ask(plain_client(), f"Answer in one sentence.\n{facts}", "City bus lift?")
        == "The lift is broken."
    )


def test_a_question_after_its_context_in_one_message() -> None:
    user = f"Context: {PASSAGES}\n\nQuestion: When does the museum open?"
    assert ask(plain_client(), "Be brief.", user) == "The museum opens at nine."


def test_earlier_turns_are_read_and_their_questions_are_not_answers() -> None:
    turns: Any = [
        {"role": "user", "content": "What is your name? My name is Ada."},
        {"role": "assistant", "content": "I have none."},
        {"role": "user", "content": [{"type": "text", "text": "What is my name?"}]},
    ]
    reply = plain_client().chat.completions.create(model="gpt-4o", messages=turns)
    assert reply.choices[0].message.content == "My name is Ada."


def test_limits_in_the_prompt_are_kept() -> None:
    question = "When does the museum open and what does a ticket cost?"
    two = "The museum opens at nine. A ticket costs 12 euros."
    assert ask(plain_client(), PASSAGES, question) == two
    one = ask(plain_client(), f"Answer in one sentence.\n{PASSAGES}", question)
    assert one in {"The museum opens at nine.", "A ticket costs 12 euros."}
    assert ask(plain_client(), f"Use only 3 words.\n{PASSAGES}", question) == "The museum opens"


def test_answers_do_not_depend_on_the_process() -> None:
    code = (
        "from common import offline_model as m;"
        "facts = {'role': 'system', 'content': 'red green. green blue. blue red. pink.'};"
        "asked = {'role': 'user', 'content': 'red green blue pink'};"
        "print(m._answer(m._read([facts, asked])), m._embed('a b', 9))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=TOP,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


# --- protocol -----------------------------------------------------------------------------


def test_every_response_says_that_it_is_offline(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="gpt-4o-mini", messages=chat(PASSAGES, "When?")
    )
    assert raw.headers["x-offline-model"] == "true"
    reply = raw.parse()
    assert reply.system_fingerprint == "offline"
    assert reply.model == "gpt-4o-mini-2024-07-18"


def stream(client: OpenAI, **settings: Any) -> Any:
    question = chat(PASSAGES, "How much is a ticket?")
    settings = {"model": "gpt-4o-mini", "messages": question, "stream": True, **settings}
    return client.chat.completions.create(**settings)


def test_streamed_text_and_usage_equal_the_plain_ones(client: OpenAI) -> None:
    chunks = list(stream(client, stream_options={"include_usage": True}))
    plain = stream(client, stream=False)
    deltas = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(deltas) == plain.choices[0].message.content
    assert len(deltas) > 5
    assert [chunk.usage for chunk in chunks if chunk.usage] == [plain.usage]
    assert chunks[-1].choices == []
    assert [c.choices[0].finish_reason for c in chunks[-2:-1]] == ["stop"]


def test_a_stream_has_usage_only_where_asked(client: OpenAI) -> None:
    assert all(chunk.usage is None and chunk.choices for chunk in stream(client))


def test_the_first_chunk_is_there_before_the_last_is_made(
    client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("common.offline_model.time.sleep", waits.append)
    chunks = stream(client)
    assert next(chunks).choices
    early = len(waits)
    rest = list(chunks)
    assert early <= 2
    assert len(waits) >= early + len(rest)


def test_a_stream_can_be_left_early(client: OpenAI) -> None:
    for _ in range(3):
        with stream(client) as chunks:
            next(chunks)
    assert ask(client, PASSAGES, "When does the museum open?") == "The museum opens at nine."


def test_an_async_stream_can_be_left_early() -> None:
    async def first() -> str:
        async with async_client() as client:
            settings: Any = {"messages": chat(PASSAGES, "How much is a ticket?"), "stream": True}
            chunks: Any = await client.chat.completions.create(model="gpt-4o", **settings)
            async for chunk in chunks:
                if chunk.choices[0].delta.content:
                    await chunks.close()
                    return str(chunk.choices[0].delta.content)
        return ""

    assert asyncio.run(first()) == "A "


def test_the_pace_is_a_wait_for_the_first_token_and_one_for_each_word(
    client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(offline_model, "FIRST_TOKEN_SECONDS", 1.0)
    monkeypatch.setattr(offline_model, "TOKEN_SECONDS", 0.25)
    monkeypatch.setattr("common.offline_model.time.sleep", waits.append)
    stream(client, stream=False)
    assert sum(waits) == 1.0 + 5 * 0.25
    waits.clear()
    list(stream(client))
    assert sum(waits) == 1.0 + 5 * 0.25


def test_concurrent_calls_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[httpx2.Request] = []
    both_started = asyncio.Event()

    class Recording(OfflineTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            started.append(request)
            if len(started) == 2:
                both_started.set()
            return await super().handle_async_request(request)

    async def until_both_started(_: float) -> None:
        # calls made one after the other would wait here until the deadline
        await asyncio.wait_for(both_started.wait(), 10)

    async def both() -> list[str]:
        monkeypatch.setattr("common.offline_model.asyncio.sleep", until_both_started)
        monkeypatch.setattr("common.offline_model.time.sleep", lambda _: pytest.fail("blocked"))
        messages = chat(PASSAGES, "How much is a ticket?")
        async with async_client(Recording()) as client:
            calls = [
                client.chat.completions.create(model="gpt-4o", messages=messages) for _ in "12"
            ]
            return [str(r.choices[0].message.content) for r in await asyncio.gather(*calls)]

    assert asyncio.run(both()) == ["A ticket costs 12 euros."] * 2


def test_the_vocabulary_is_loaded_before_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str] = []
    monkeypatch.setattr(offline_model, "count_tokens", lambda _, model: counted.append(model))
    OfflineTransport()
    assert counted == ["gpt-4o-mini"]


def test_many_tasks_and_threads_get_their_own_answers() -> None:
    def fact(n: int) -> Any:
        return chat(f"Room {n} has {n + 7} chairs.", f"How many chairs has room {n}?")

    async def tasks() -> list[str]:
        async with llm.async_openai_client() as client:
            calls = (
                client.chat.completions.create(model="gpt-4o", messages=fact(n)) for n in range(50)
            )
            return [str(r.choices[0].message.content) for r in await asyncio.gather(*calls)]

    expected = [f"Room {n} has {n + 7} chairs." for n in range(50)]
    assert asyncio.run(tasks()) == expected
    client = plain_client()
    with ThreadPoolExecutor(8) as pool:
        told = pool.map(lambda n: ask(client, *(m["content"] for m in fact(n))), range(50))
        assert list(told) == expected


@pytest.mark.parametrize("key", ["max_tokens", "max_completion_tokens"])
def test_a_limit_of_tokens_ends_the_answer(client: OpenAI, key: str) -> None:
    reply = stream(client, stream=False, **{key: 3})
    assert reply.choices[0].finish_reason == "length"
    assert "A ticket costs 12 euros.".startswith(reply.choices[0].message.content)
    assert 0 < reply.usage.completion_tokens <= 3


# --- usage --------------------------------------------------------------------------------


def test_usage_is_counted_from_the_texts(client: OpenAI) -> None:
    messages = chat(PASSAGES, "How much is a ticket?")
    usage = stream(client, stream=False).usage
    assert usage.prompt_tokens == count_message_tokens(messages, "gpt-4o-mini").tokens
    assert usage.completion_tokens == count_tokens("A ticket costs 12 euros.", "gpt-4o").tokens
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens_details.reasoning_tokens == 0
    with_tools = stream(client, stream=False, tools=[ORDER_TOOL]).usage
    extra = count_tokens(json.dumps([ORDER_TOOL]), "gpt-4o").tokens
    assert with_tools.prompt_tokens == usage.prompt_tokens + extra


REAL_USAGE = """
import json, httpx2, tiktoken
from openai import OpenAI
from common.offline_model import OfflineTransport
http = httpx2.Client(transport=OfflineTransport())
client = OpenAI(api_key="offline", base_url="https://offline.invalid/v1", http_client=http)
messages = [{"role": "user", "content": "Vienna is in Austria.\\nWhere is Vienna?"}]
usage = client.chat.completions.create(model="gpt-4o", messages=messages).usage
encode = tiktoken.get_encoding("o200k_base").encode
print(usage.prompt_tokens == 6 + len(encode("user")) + len(encode(messages[0]["content"])))
print(usage.completion_tokens == len(encode("Vienna is in Austria.")))
usage = client.embeddings.create(model="text-embedding-3-small", input=["Grüße", "aus Wien"]).usage
encode = tiktoken.get_encoding("cl100k_base").encode
print(usage.prompt_tokens == usage.total_tokens == len(encode("Grüße")) + len(encode("aus Wien")))
"""


def test_usage_is_what_tiktoken_counts(vocabulary: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", REAL_USAGE],
        cwd=TOP,
        env={**os.environ, "TIKTOKEN_CACHE_DIR": str(vocabulary)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("True\nTrue\nTrue\n", "")


def cached(client: OpenAI, system: str, model: str = "gpt-4o-mini") -> int:
    reply = client.chat.completions.create(model=model, messages=chat(system, "What is it?"))
    assert reply.usage is not None
    assert reply.usage.prompt_tokens_details is not None
    return reply.usage.prompt_tokens_details.cached_tokens or 0


def test_a_long_beginning_is_cached_from_the_second_call_on(client: OpenAI) -> None:
    name = type(client).__module__ + str(id(client))
    system = f"{name}. " + " ".join(f"Rule {n} is about case {n}." for n in range(300))
    assert count_tokens(system, "gpt-4o-mini").tokens > 2000
    assert cached(client, system) == 0
    again = cached(client, system + " And one more rule.")
    assert again % 128 == 0
    assert 2000 < again + 256 <= count_tokens(system, "gpt-4o-mini").tokens + 256
    assert cached(client, system, "gpt-4o") == 0
    assert cached(client, "x" + system) == 0
    half = system[: len(system) * 6 // 10]
    assert 1024 <= cached(client, half + " Something else." * 400) < again


def test_a_short_prompt_is_not_cached(client: OpenAI) -> None:
    assert [cached(client, PASSAGES), cached(client, PASSAGES)] == [0, 0]


def test_a_reasoning_model_is_billed_for_what_it_compared(client: OpenAI) -> None:
    usage = stream(client, stream=False, model="gpt-5-mini").usage
    thoughts = usage.completion_tokens_details.reasoning_tokens
    facts = PASSAGES.replace(". ", ".\n")
    assert thoughts == count_tokens(facts, "gpt-5-mini").tokens > 10
    text = count_tokens("A ticket costs 12 euros.", "gpt-5-mini").tokens
    assert usage.completion_tokens == text + thoughts


# --- tools --------------------------------------------------------------------------------


def call(client: OpenAI, question: str, *tools: Any, **settings: Any) -> tuple[str, Any] | None:
    reply = client.chat.completions.create(
        model="gpt-4o", messages=chat(PASSAGES, question), tools=list(tools), **settings
    )
    choice = reply.choices[0]
    if not choice.message.tool_calls:
        assert choice.finish_reason == "stop"
        return None
    assert choice.finish_reason == "tool_calls"
    function = choice.message.tool_calls[0].function
    return function.name, json.loads(function.arguments)


def test_a_tool_is_called_with_arguments_from_the_question(client: OpenAI) -> None:
    tools = (BOOK_TOOL, ORDER_TOOL)
    assert call(client, "Where is my order A-1042?", *tools) == (
        "look_up_order",
        {"order_id": "A-1042"},
    )
    question = "Book a table in Graz for 4 guests, outside, for dinner"
    assert call(client, question, *tools) == (
        "book_table",
        {"city": "Graz", "guests": 4, "outside": True, "meal": "dinner"},
    )


def test_the_nearest_of_several_tools_is_called(client: OpenAI) -> None:
    def search(what: str) -> Any:
        query = {"type": "object", "properties": {"query": {"type": "string"}}}
        return {"type": "function", "function": {"name": f"search_{what}", "parameters": query}}

    question = "Search the paintings for a red bike"
    called = call(client, question, search("books"), search("paintings"), search("maps"))
    assert called == ("search_paintings", {"query": question})


def test_a_tool_is_not_called_without_its_arguments_or_a_shared_word(client: OpenAI) -> None:
    assert call(client, "Where is my order?", ORDER_TOOL) is None
    assert call(client, "Is A-1042 a nice museum?", ORDER_TOOL) is None


def test_tool_choice_is_obeyed(client: OpenAI) -> None:
    question = "Where is my order A-1042?"
    named: Any = {"type": "function", "function": {"name": "book_table"}}
    tools = (BOOK_TOOL, ORDER_TOOL)
    assert call(client, question, *tools, tool_choice="none") is None
    assert call(client, question, *tools, tool_choice=named) == ("book_table", {})
    assert call(client, "Hello", *tools, tool_choice="required") is not None


def test_the_result_of_a_tool_is_told(client: OpenAI) -> None:
    settings: Any = {"model": "gpt-4o", "tools": [ORDER_TOOL]}
    messages = chat(PASSAGES, "Where is my order A-1042?")
    asked = client.chat.completions.create(messages=messages, **settings).choices[0].message
    assert asked.tool_calls
    result = [{"id": "B-7", "state": "lost"}, {"order_id": "A-1042", "state": "shipped"}]
    answer = {
        "role": "tool",
        "tool_call_id": asked.tool_calls[0].id,
        "content": json.dumps(result),
    }
    messages += [asked.model_dump(exclude_none=True), answer]
    told = client.chat.completions.create(messages=messages, **settings).choices[0]
    assert told.message.content == "order id: A-1042, state: shipped"


def test_it_does_not_abstain_from_a_result() -> None:
    messages = chat(ABSTAIN, "When will it arrive?")
    function = {"name": "look_up_order", "arguments": "{}"}
    call = {"id": "c1", "type": "function", "function": function}
    messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
    messages.append({"role": "tool", "tool_call_id": "c1", "content": '{"state": "shipped"}'})
    told = plain_client().chat.completions.create(model="gpt-4o", messages=messages)
    assert told.choices[0].message.content == "state: shipped"


def test_a_streamed_call_equals_the_plain_one(client: OpenAI) -> None:
    settings = {"messages": chat("", "Where is my order A-1042?"), "tools": [ORDER_TOOL]}
    chunks = list(stream(client, **settings))
    plain = stream(client, stream=False, **settings).choices[0].message.tool_calls[0]
    parts = [c.choices[0].delta.tool_calls[0] for c in chunks if c.choices[0].delta.tool_calls]
    assert parts[0].id == plain.id
    assert parts[0].function.name == plain.function.name
    assert "".join(p.function.arguments for p in parts) == plain.function.arguments
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


# --- structured output --------------------------------------------------------------------


class Claim(BaseModel):
    text: str
    euros: float | None


class Verdict(BaseModel):
    relevance: float = Field(ge=0, le=1)
    faithfulness: int = Field(description="from 1 (made up) to 5, i.e. 1 to 5")
    grounded: bool
    harmful: bool
    topic: Literal["dogs", "ticket", "other"]
    claims: list[Claim]


def judge(client: OpenAI, answer: str) -> Verdict:
    user = f"Question: How much is a ticket?\nContext: {PASSAGES}\nAnswer: {answer}"
    verdict = client.chat.completions.parse(
        model="gpt-4o-mini", messages=chat("Judge the answer.", user), response_format=Verdict
    )
    assert verdict.choices[0].message.parsed is not None
    return verdict.choices[0].message.parsed


def test_structured_output_is_filled_from_the_prompt(client: OpenAI) -> None:
    verdict = judge(client, "A ticket costs 12 euros.")
    assert verdict.topic == "ticket"
    assert verdict.claims == [Claim(text="A ticket costs 12 euros.", euros=12)]
    assert not verdict.harmful


def test_similarities_are_measured(client: OpenAI) -> None:
    good, bad = judge(client, "A ticket costs 12 euros."), judge(client, "Elephants sleep.")
    assert good.relevance > bad.relevance == 0
    assert (good.faithfulness, bad.faithfulness) == (5, 1)
    assert (good.grounded, bad.grounded) == (True, False)


def test_a_json_object_is_one(client: OpenAI) -> None:
    reply = ask(client, PASSAGES, "How much is a ticket?", response_format={"type": "json_object"})
    assert json.loads(reply) == {"answer": "A ticket costs 12 euros."}


# --- embeddings ---------------------------------------------------------------------------


def test_similar_texts_are_near(client: OpenAI) -> None:
    texts = ["return the shoes", "shoes were returned", "pay by card"]
    reply = client.embeddings.create(model="text-embedding-3-small", input=texts)
    one, two, three = (row.embedding for row in reply.data)

    def near(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert [len(one), round(math.hypot(*one), 5)] == [1536, 1.0]
    assert near(one, two) > 0.99
    assert near(one, three) < 0.2
    assert reply.model == "text-embedding-3-small"
    assert reply.usage.prompt_tokens == sum(
        count_tokens(text, "text-embedding-3-small").tokens for text in texts
    )


def test_embeddings_in_base64_are_the_floats(client: OpenAI) -> None:
    settings: Any = {"model": "text-embedding-3-large", "input": "a card", "dimensions": 256}
    floats = client.embeddings.create(encoding_format="float", **settings).data[0].embedding
    packed: Any = client.embeddings.create(encoding_format="base64", **settings).data[0].embedding
    assert struct.unpack("<256f", base64.b64decode(packed)) == pytest.approx(floats)
    assert client.embeddings.create(**settings).data[0].embedding == pytest.approx(floats)


# --- errors -------------------------------------------------------------------------------

USER: Any = [{"role": "user", "content": "Hello"}]


def with_schema(part: Any) -> Any:
    schema = {"type": "object", "properties": {"a": part}}
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


@pytest.mark.parametrize("model", ["no-such-model", "openai/gpt-4o", "GPT-4o", "gpt-4o-huge"])
def test_an_unknown_model_is_not_found(client: OpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist") as error:
        client.chat.completions.create(model=model, messages=USER)
    assert error.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("says", "settings"),
    [
        ("not empty", {"messages": []}),
        ("list", {"messages": "Hello"}),
        ("format", {"messages": ["Hello"]}),
        ("role", {"messages": [{"role": "robot", "content": "Hello"}]}),
        ("content", {"messages": [{"role": "user", "content": None}]}),
        ("content", {"messages": [{"role": "user", "content": 7}]}),
        ("n", {"n": 2}),
        ("max_tokens", {"max_tokens": 0}),
        ("max_tokens", {"max_completion_tokens": "many"}),
        ("format", {"tools": [{"type": "function"}]}),
        ("format", {"tools": "all"}),
        ("format", {"stream": True, "stream_options": "usage"}),
        ("tool_choice", {"tool_choice": {"type": "function", "function": {"name": "f"}}}),
        ("object", {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}),
        ("type", {"response_format": with_schema({"type": "colour"})}),
        ("format", {"response_format": with_schema({"$ref": "#/$defs/Missing"})}),
        ("format", {"response_format": with_schema({"type": "array"})}),
        ("itself", {"response_format": with_schema({"$ref": "#/properties/a"})}),
        ("nested", {"response_format": with_schema({"type": "array", "items": {"$ref": "#"}})}),
        ("format", {"response_format": with_schema("string")}),
        ("response_format", {"response_format": {"type": "xml"}}),
        ("an embedding model", {"model": "text-embedding-3-small"}),
    ],
)
def test_a_bad_chat_is_refused_with_its_reason(
    client: OpenAI, says: str, settings: dict[str, Any]
) -> None:
    with pytest.raises(openai.BadRequestError, match=says):
        client.chat.completions.create(**{"model": "gpt-4o", "messages": USER, **settings})


@pytest.mark.parametrize(
    ("says", "settings"),
    [
        ("input", {"input": ""}),
        ("input", {"input": []}),
        ("input", {"input": ["fine", ""]}),
        ("input", {"input": [1, 2]}),
        ("dimensions", {"dimensions": 0}),
        ("dimensions", {"dimensions": 1537}),
        ("not an embedding model", {"model": "gpt-4o"}),
    ],
)
def test_a_bad_embedding_is_refused_with_its_reason(
    client: OpenAI, says: str, settings: dict[str, Any]
) -> None:
    whole: Any = {"model": "text-embedding-3-small", "input": "fine", **settings}
    with pytest.raises(openai.BadRequestError, match=says):
        client.embeddings.create(**whole)


def test_an_async_client_raises_the_same_errors() -> None:
    async def run() -> None:
        async with async_client() as client:
            await client.chat.completions.create(model="no-such-model", messages=USER)

    with pytest.raises(openai.NotFoundError):
        asyncio.run(run())


def test_what_it_does_not_have_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="has no POST /responses"):
        client.responses.create(model="gpt-4o", input="Hello")


def test_a_body_in_another_format_is_refused() -> None:
    with httpx2.Client(transport=OfflineTransport()) as http:
        parts = b'{"model": "gpt-4o", "messages": [{"role": "user", "content": [7]}]}'
        for body in (b"{", b"[]", b"7", b"\xff", parts):
            assert http.post(f"{URL}/chat/completions", content=body).status_code == 400


def test_models_are_those_with_a_price(client: OpenAI) -> None:
    models = [model.id for model in client.models.list()]
    assert {"gpt-4o-mini", "o4-mini", "text-embedding-3-large"} <= set(models)


# --- which client -------------------------------------------------------------------------


def test_without_settings_the_offline_model_answers_and_says_so() -> None:
    with llm.openai_client() as client:
        assert ask(client, PASSAGES, "Where do dogs stay?") == "Dogs stay outside."
    assert "the offline model, priced as gpt-4o-mini" in llm.model_label()
    assert re.search(
        r"its pace is simulated, its tokens are (counted|estimated)$", llm.model_label()
    )


def test_a_key_or_a_url_leads_to_a_real_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("OPENAI_BASE_URL", "")
    with llm.openai_client() as client:
        assert (client.api_key, str(client.base_url)) == ("sk-secret", "https://api.openai.com/v1/")
    assert llm.model_label() == "gpt-4o-mini at https://api.openai.com/v1"
    monkeypatch.delenv("OPENAI_API_KEY")
    read_settings.cache_clear()
    monkeypatch.setenv("OPENAI_BASE_URL", "http://ada:secret@localhost:11434/v1")
    monkeypatch.setenv("OPENAI_MODEL", "llama3.2")
    assert llm.async_openai_client().api_key
    assert llm.model_label() == "llama3.2 at http://localhost:11434/v1"


@pytest.mark.parametrize(
    "url",
    [
        "secret:11434/v1",
        '"http://secret/v1"',
        "http://sec ret/v1",
        "http:///secret",
        "ftp://secret/v1",
        "http://secret:port/v1",
    ],
)
def test_a_malformed_url_is_named_and_not_shown(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    for make in (llm.openai_client, llm.async_openai_client, llm.model_label):
        with pytest.raises(ValueError, match=r"^OPENAI_BASE_URL (is not|has) [^\n]+$") as error:
            make()
        assert "sec" not in str(error.value)
