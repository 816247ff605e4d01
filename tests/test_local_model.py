"""The local model through the real `openai` package: chat, embeddings, models, and the server."""

import ast
import asyncio
import base64
import http.client
import json
import math
import os
import re
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.shared import chat_model
from pydantic import BaseModel, Field

import local_model
from local_model import catalog, server, tokens
from local_model.answer import NOTHING_TO_READ
from local_model.shape import ApiError
from local_model.tokens import count_message_tokens, count_tokens

TOP = Path(__file__).resolve().parents[1]
PASSAGES = "The museum opens at nine. A ticket costs 12 euros. Dogs stay outside."
ABSTAIN = 'If the passages do not contain the answer, say "Ask at the desk. We know."'
TICKET = "How much is a ticket?"


def function(name: str, about: str = "", *required: str, **properties: str) -> Any:
    rows = {key: {"type": kind} for key, kind in properties.items()}
    schema = {"type": "object", "properties": rows, "required": list(required)}
    told = {"name": name, "description": about, "parameters": schema}
    return {"type": "function", "function": told}


ORDER = function("look_up_order", "Return the state of an order.", "order_id", order_id="string")
TABLE = function(
    "book_table", "Book a table.", "city", city="string", guests="integer", outside="boolean"
)
TABLE["function"]["parameters"]["properties"]["meal"] = {"type": "string", "enum": ["lunch", "tea"]}


@pytest.fixture(scope="module", autouse=True)
def url() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("FIRST_TOKEN_SECONDS", "TOKEN_SECONDS", "EMBEDDING_SECONDS"):
            patch.setattr(server, name, 0.0)
        running = local_model.start()
        yield running.base_url
        running.stop()


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=url, api_key="any", max_retries=0) as client:
        yield client


def chat(system: str, user: str) -> Any:
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def create(client: OpenAI, **settings: Any) -> Any:
    settings = {"model": "gpt-4o-mini", "messages": chat(PASSAGES, TICKET), **settings}
    return client.chat.completions.create(**settings)


def ask(client: OpenAI, system: str, user: str, **settings: Any) -> str:
    reply = create(client, messages=chat(system, user), **settings)
    return str(reply.choices[0].message.content)


# --- answers ------------------------------------------------------------------------------


def test_answer_comes_from_the_prompt_and_changes_with_it(client: OpenAI) -> None:
    assert ask(client, PASSAGES, TICKET) == "A ticket costs 12 euros."
    assert ask(client, PASSAGES.replace("12", "15"), TICKET) == "A ticket costs 15 euros."
    assert "euros" not in ask(client, PASSAGES.replace("A ticket costs 12 euros.", ""), TICKET)
    assert ask(client, "You are a guide. Answer briefly.", "Who built it?") == NOTHING_TO_READ


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        (ABSTAIN, "Ask at the desk. We know."),
        ("When the context does not cover it, answer 'I don't know'.", "I don't know"),
        ("Say “No idea.” if you cannot find the answer.", "No idea."),
        ("If there is no answer in the text, say that you do not know.", "I do not know."),
        ("If your size is not in stock, write to us.", None),  # a fact, no instruction
    ],
)
def test_it_abstains_only_where_told_to_in_the_words_of_the_prompt(
    client: OpenAI, instruction: str, expected: str | None
) -> None:
    said = ask(client, f"{instruction} {PASSAGES}", "Is there a lift?")
    assert said == (expected or instruction)
    assert ask(client, f"{instruction} {PASSAGES}", "When does the museum open?") in PASSAGES


@pytest.mark.parametrize(
    ("system", "question", "answer"),
    [
        ("You are a guide. Answer about dogs.\n" + PASSAGES, "And dogs?", "Dogs stay outside."),
        ("The ticket office is red. Admission is free.", TICKET, "The ticket office is red."),
        (
            "Answer in one sentence. " + "The bus is late. " * 8 + "The lift is broken.",
            "Bus lift?",
            "The lift is broken.",
        ),
        ("Be brief.", f"Context: {PASSAGES}\n\nQuestion: {TICKET}", "A ticket costs 12 euros."),
        ("Use only 3 words.\n" + PASSAGES, "When does the museum open?", "The museum opens"),
        (
            PASSAGES,
            "When does the museum open and what does a ticket cost?",
            "The museum opens at nine. A ticket costs 12 euros.",
        ),
        (
            "",
            "Rewrite as search keywords: do I return shoes",
            "rewrite search keywords return shoes",
        ),
    ],
)
def test_it_reads_instructions_limits_and_rare_words(
    client: OpenAI, system: str, question: str, answer: str
) -> None:
    assert ask(client, system, question) == answer


def test_earlier_turns_are_read_and_their_questions_are_not_answers(client: OpenAI) -> None:
    turns: Any = [
        {"role": "user", "content": "What is your name? My name is Ada."},
        {"role": "assistant", "content": "I have none."},
        {"role": "user", "content": [{"type": "text", "text": "What is my name?"}]},
    ]
    assert create(client, messages=turns).choices[0].message.content == "My name is Ada."


def test_what_is_no_text_is_counted_and_labelled_as_not_looked_at(client: OpenAI) -> None:
    parts = [
        {"type": "text", "text": TICKET},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        {"type": "file", "file": {"file_id": "f"}},
    ]
    messages = [{"role": "system", "content": PASSAGES}, {"role": "user", "content": parts}]
    raw = client.chat.completions.with_raw_response.create(model="gpt-4o", messages=messages)  # type: ignore[arg-type]
    note = " (The local model did not look at 2 images, 1 file.)"
    reply: Any = raw.parse()
    said = reply.choices[0].message.content
    assert said == "A ticket costs 12 euros." + note
    assert raw.headers["x-local-model-did-not-look-at"] == "2 images, 1 file"
    plain = create(client, model="gpt-4o").usage.prompt_tokens
    assert reply.usage.prompt_tokens == plain + 3 * 765
    later = [
        *messages,
        {"role": "assistant", "content": said},
        {"role": "user", "content": "Look?"},
    ]
    assert "not look" not in create(client, messages=later).choices[0].message.content.replace(
        note, ""
    )


# --- protocol -----------------------------------------------------------------------------


def test_every_answer_says_whose_it_is(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="gpt-4o-mini", messages=chat(PASSAGES, "When?")
    )
    assert raw.headers["x-local-model"] == "true"
    assert raw.headers["x-request-id"].startswith("req_")
    reply = raw.parse()
    assert reply.system_fingerprint == "local"
    assert reply.model == "gpt-4o-mini-2024-07-18"
    assert reply.id == create(client, messages=chat(PASSAGES, "When?")).id != create(client).id


def test_a_stream_equals_the_plain_answer_and_its_usage(client: OpenAI) -> None:
    chunks = list(create(client, stream=True, stream_options={"include_usage": True}))
    plain = create(client)
    deltas = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(deltas) == plain.choices[0].message.content
    assert len(deltas) > 5
    assert [chunk.usage for chunk in chunks if chunk.usage] == [plain.usage]
    assert chunks[-1].choices == []
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None and chunk.choices for chunk in create(client, stream=True))


def test_the_pace_is_a_wait_for_the_first_token_and_one_for_each_word(
    client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    class Recording:
        @staticmethod
        async def sleep(seconds: float) -> None:
            waits.append(seconds)

    monkeypatch.setattr(server, "FIRST_TOKEN_SECONDS", 1.0)
    monkeypatch.setattr(server, "TOKEN_SECONDS", 0.25)
    monkeypatch.setattr(server, "asyncio", Recording)
    create(client)
    assert waits == [1.0 + 5 * 0.25]
    list(create(client, stream=True))
    assert waits[1:] == [1.0, *[0.25] * 5]


def test_streams_can_be_left_early(client: OpenAI) -> None:
    for _ in range(3):
        with create(client, stream=True) as chunks:
            next(chunks)
    assert ask(client, PASSAGES, TICKET) == "A ticket costs 12 euros."


def test_many_tasks_get_their_own_answers(url: str) -> None:
    def fact(n: int) -> Any:
        return chat(f"Room {n} has {n + 7} chairs.", f"How many chairs has room {n}?")

    async def tasks() -> list[str]:
        async with AsyncOpenAI(base_url=url, api_key="any") as asynchronous:
            make = asynchronous.chat.completions.create
            calls = (make(model="gpt-4o", messages=fact(n)) for n in range(30))
            return [str(r.choices[0].message.content) for r in await asyncio.gather(*calls)]

    expected = [f"Room {n} has {n + 7} chairs." for n in range(30)]
    assert asyncio.run(tasks()) == expected


def test_requests_are_answered_when_no_thread_can_be_started(
    client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread at interpreter shutdown")

    monkeypatch.setattr(tokens, "_vocabularies", tokens._Vocabularies())
    monkeypatch.setattr(threading.Thread, "start", no_more)
    assert ask(client, PASSAGES, TICKET) == "A ticket costs 12 euros."
    assert len(list(create(client, stream=True, model="gpt-4o"))) > 5
    client.embeddings.create(model="text-embedding-3-small", input="a")


@pytest.mark.parametrize("key", ["max_tokens", "max_completion_tokens"])
def test_limits_and_stops_end_the_answer(client: OpenAI, key: str) -> None:
    reply = create(client, **{key: 3})
    assert reply.choices[0].finish_reason == "length"
    assert "A ticket costs 12 euros.".startswith(reply.choices[0].message.content)
    assert 0 < reply.usage.completion_tokens <= 3
    stopped = create(client, stop=["euros", " 12"]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == ("A ticket costs", "stop")
    call = create(client, tools=[ORDER], messages=chat("", "Where is order A-1042?"), **{key: 14})
    assert call.choices[0].finish_reason == "length"


# --- usage --------------------------------------------------------------------------------


def test_usage_is_counted_from_the_texts(client: OpenAI) -> None:
    usage = create(client).usage
    messages = chat(PASSAGES, TICKET)
    assert usage.prompt_tokens == count_message_tokens(messages, "gpt-4o-mini").tokens
    assert usage.completion_tokens == count_tokens("A ticket costs 12 euros.", "gpt-4o").tokens
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    with_tools = create(client, tools=[ORDER]).usage
    extra = count_tokens(json.dumps([ORDER]), "gpt-4o").tokens
    assert with_tools.prompt_tokens == usage.prompt_tokens + extra


REAL_USAGE = """
import local_model, tiktoken
from openai import OpenAI
client = OpenAI(base_url=local_model.start().base_url, api_key="any")
messages = [{"role": "user", "content": "Vienna is in Austria.\\nWhere is Vienna?"}]
usage = client.chat.completions.create(model="gpt-4o", messages=messages).usage
encode = tiktoken.get_encoding("o200k_base").encode
print(usage.prompt_tokens == 6 + len(encode("user")) + len(encode(messages[0]["content"])))
print(usage.completion_tokens == len(encode("Vienna is in Austria.")))
usage = client.embeddings.create(model="text-embedding-3-small", input=["Grüße", "aus Wien"]).usage
encode = tiktoken.get_encoding("cl100k_base").encode
print(usage.prompt_tokens == usage.total_tokens == len(encode("Grüße")) + len(encode("aus Wien")))
vectors = client.embeddings.create(model="text-embedding-3-small", input="a b", dimensions=9)
print(vectors.data[0].embedding)
"""


def python(code: str, **env: str) -> str:
    command = [sys.executable, "-W", "error", "-c", code]
    env = {**os.environ, **env}
    done = subprocess.run(
        command, cwd=TOP, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    return done.stdout


def test_usage_is_what_tiktoken_counts_and_no_answer_depends_on_the_process(
    vocabulary: Path,
) -> None:
    told = {
        python(REAL_USAGE, TIKTOKEN_CACHE_DIR=str(vocabulary), PYTHONHASHSEED=seed)
        for seed in ("1", "2")
    }
    assert len(told) == 1
    assert told.pop().startswith("True\nTrue\nTrue\n[")


def cache_of(client: OpenAI, system: str, model: str, **settings: Any) -> tuple[int, int]:
    usage = create(client, model=model, messages=chat(system, "What is it?"), **settings).usage
    details = usage.prompt_tokens_details
    assert details.cached_tokens + details.cache_write_tokens <= usage.prompt_tokens
    return details.cached_tokens, details.cache_write_tokens


def test_a_long_beginning_is_written_to_the_cache_and_then_read(client: OpenAI) -> None:
    system = " ".join(f"Rule {n} is about case {n}." for n in range(300))
    length = count_tokens(system, "gpt-6-luna").tokens
    cached, written = cache_of(client, system, "gpt-6-luna")
    assert (cached, written % 128) == (0, 0)
    assert length - 128 <= written <= length + 128
    again, more = cache_of(client, system + " And one more rule.", "gpt-6-luna")
    assert length - 256 <= again <= length
    assert again % 128 == 0
    assert more <= 256
    assert cache_of(client, "x" + system, "gpt-6-luna")[0] == 0
    half = system[: len(system) * 6 // 10]
    assert 1024 <= cache_of(client, half + " Something else." * 400, "gpt-6-luna")[0] < again
    assert cache_of(client, system, "gpt-4o") == (0, 0)  # another model, which bills no writing
    assert cache_of(client, system, "gpt-4o")[0] >= 1024
    assert [cache_of(client, PASSAGES, "gpt-6-luna") for _ in "12"] == [(0, 0)] * 2
    explicit = {"prompt_cache_options": {"mode": "explicit"}}
    assert cache_of(client, system, "gpt-6-luna", extra_body=explicit) == (0, 0)


def test_the_memory_of_the_cache_is_bounded(
    client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("local_model.usage.MOST_BLOCKS", 300)
    system = " ".join(f"Line {n} says {n * n}." for n in range(300))
    cache_of(client, system, "gpt-5.6-luna")
    assert cache_of(client, system, "gpt-5.6-luna")[0] > 0
    cache_of(client, "Other. " * 3000, "gpt-5.6-luna")
    assert cache_of(client, system, "gpt-5.6-luna")[0] == 0


def test_reasoning_is_billed_by_effort_and_counts_inside_the_limit(client: OpenAI) -> None:
    def thoughts(**settings: Any) -> int:
        usage = create(client, model="gpt-6-luna", **settings).usage
        return int(usage.completion_tokens_details.reasoning_tokens)

    compared = count_tokens("A ticket costs 12 euros.", "gpt-6-luna").tokens  # it shares a word
    assert thoughts() == thoughts(reasoning_effort="medium") == compared > 5
    assert thoughts(reasoning_effort="none") == 0
    assert thoughts(reasoning_effort="low") < compared < thoughts(reasoning_effort="max")
    cut = create(client, model="gpt-6-luna", max_completion_tokens=compared - 3)
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("", "length")
    assert cut.usage.completion_tokens == compared - 3


# --- tools --------------------------------------------------------------------------------


def calls(client: OpenAI, question: str, *tools: Any, **settings: Any) -> list[tuple[str, Any]]:
    reply = create(client, messages=chat(PASSAGES, question), tools=list(tools), **settings)
    made = reply.choices[0].message.tool_calls or []
    assert reply.choices[0].finish_reason == ("tool_calls" if made else "stop")
    return [(call.function.name, json.loads(call.function.arguments)) for call in made]


def test_the_nearest_tool_is_called_with_arguments_from_the_question(client: OpenAI) -> None:
    both = (TABLE, ORDER)
    order = ("look_up_order", {"order_id": "A-1042"})
    assert calls(client, "Where is my order A-1042?", *both) == [order]
    table = {"city": "Graz", "guests": 4, "outside": True, "meal": "lunch"}
    question = "Book a table in Graz for 4 guests, outside, for lunch"
    assert calls(client, question, *both) == [("book_table", table)]
    search = [function(f"search_{what}", query="string") for what in ("books", "paintings")]
    question = "Search the paintings for a red bike"
    assert calls(client, question, *search) == [("search_paintings", {"query": question})]
    assert calls(client, "Where is my order?", ORDER) == []
    assert calls(client, "Is A-1042 a nice museum?", ORDER) == []


def test_several_ids_are_several_calls_and_all_results_are_told(client: OpenAI) -> None:
    question = "Where are my orders A-1042, A-1043 and A-1044, placed in 2024?"
    ids = [call[1]["order_id"] for call in calls(client, question, ORDER)]
    assert ids == ["A-1042", "A-1043", "A-1044"]
    assert len(calls(client, question, ORDER, parallel_tool_calls=False)) == 1
    messages = chat(PASSAGES, question)
    message = create(client, messages=messages, tools=[ORDER]).choices[0].message
    results = [
        {
            "role": "tool",
            "tool_call_id": call.id,
            "content": json.dumps({"order_id": order, "state": "shipped"}),
        }
        for call, order in zip(message.tool_calls, ids, strict=True)
    ]
    told = create(client, messages=[*messages, message, *results], tools=[ORDER]).choices[0]
    assert told.message.content == " ".join(f"order id: {i}, state: shipped" for i in ids)


def test_a_result_is_told_and_not_abstained_from(client: OpenAI) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = chat(ABSTAIN, "When will A-1042 arrive?")
    messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
    rows = [{"id": "B-7", "state": "lost"}, {"order_id": "A-1042", "state": "shipped"}]
    messages.append({"role": "tool", "tool_call_id": "c1", "content": json.dumps(rows)})
    told = create(client, messages=messages).choices[0].message.content
    assert told == "order id: A-1042, state: shipped"


def test_tool_choice_is_obeyed(client: OpenAI) -> None:
    question, both = "Where is my order A-1042?", (TABLE, ORDER)
    named = {"type": "function", "function": {"name": "book_table"}}
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}
    assert calls(client, question, *both, tool_choice="none") == []
    assert calls(client, question, *both, tool_choice=named) == [("book_table", {})]
    assert calls(client, question, *both, tool_choice=allowed) == [("book_table", {})]
    assert len(calls(client, "Hello", *both, tool_choice="required")) == 1


def test_streamed_calls_carry_their_index_and_equal_the_plain_ones(client: OpenAI) -> None:
    settings = {"messages": chat("", "Where are orders A-1042 and A-1043?"), "tools": [ORDER]}
    made: dict[int, str] = {}
    chunks = list(create(client, stream=True, **settings))
    for chunk in chunks:
        for part in chunk.choices[0].delta.tool_calls or []:
            made[part.index] = (
                made.get(part.index, "") + f"{part.id or ''}{part.function.arguments}"
            )
    plain = create(client, **settings).choices[0].message.tool_calls
    assert list(made.values()) == [call.id + call.function.arguments for call in plain]
    assert len(made) == 2
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
    user = f"Question: {TICKET}\nContext: {PASSAGES}\nAnswer: {answer}"
    verdict = client.chat.completions.parse(
        model="gpt-6-luna", messages=chat("Judge the answer.", user), response_format=Verdict
    )
    assert verdict.choices[0].message.parsed is not None
    return verdict.choices[0].message.parsed


def test_structured_output_is_filled_from_the_prompt(client: OpenAI) -> None:
    good, bad = judge(client, "A ticket costs 12 euros."), judge(client, "Elephants sleep.")
    assert good.topic == "ticket"
    assert good.claims == [Claim(text="A ticket costs 12 euros.", euros=12)]
    assert not good.harmful
    assert good.relevance > bad.relevance == 0
    assert (good.faithfulness, bad.faithfulness) == (5, 1)
    assert (good.grounded, bad.grounded) == (True, False)
    said = ask(
        client, PASSAGES, f"Answer in JSON. {TICKET}", response_format={"type": "json_object"}
    )
    assert json.loads(said) == {"answer": "A ticket costs 12 euros."}


# --- embeddings and models ----------------------------------------------------------------


def test_similar_texts_are_near_and_base64_is_the_same_floats(client: OpenAI) -> None:
    texts = ["return the shoes", "shoes were returned", "pay by card"]
    reply = client.embeddings.create(model="text-embedding-3-small", input=texts)
    one, two, three = (row.embedding for row in reply.data)
    assert [len(one), round(math.hypot(*one), 5)] == [1536, 1.0]
    assert sum(x * y for x, y in zip(one, two, strict=True)) > 0.99
    assert sum(x * y for x, y in zip(one, three, strict=True)) < 0.2
    settings: Any = {"model": "text-embedding-3-large", "input": "a card", "dimensions": 256}
    floats = client.embeddings.create(encoding_format="float", **settings).data[0].embedding
    packed: Any = client.embeddings.create(encoding_format="base64", **settings).data[0].embedding
    assert struct.unpack("<256f", base64.b64decode(packed)) == pytest.approx(floats)


def test_models_tell_their_last_day_and_go_on_it(client: OpenAI) -> None:
    today = catalog.today()
    listed = {model.id: model for model in client.models.list()}
    assert listed["gpt-6-luna"].shutdown_date is None
    for name, model in catalog.MODELS.items():
        assert (name in listed) == (model.shutdown is None or model.shutdown > today)
    kept = client.models.retrieve("gpt-6-luna")
    assert kept.to_dict().keys() == {"id", "object", "created", "owned_by", "shutdown_date"}
    with pytest.raises(openai.NotFoundError, match=r"`o1` has been .* shut down on 2026-10-23"):
        client.models.retrieve("o1")
    last = catalog.MODELS["gpt-4o-mini"].shutdown
    assert last is not None
    before = last.fromordinal(last.toordinal() - 1)
    assert catalog.find("gpt-4o-mini-2024-07-18", lambda: before).shutdown == last
    with pytest.raises(ApiError, match="2027-01-14"):
        catalog.find("gpt-4o-mini", lambda: last)


def test_the_catalog_is_that_of_the_openai_package() -> None:
    source = re.sub(r"\s+", " ", Path(chat_model.__file__).read_text())
    names, _, deprecated = source.partition("Deprecated values:")
    days = dict[str, str]()
    for row, day in re.findall(r"- ([^:]+): Announced shutdown date: (\S+)\.", deprecated):
        days |= dict.fromkeys(re.findall(r'"([^"]+)"', row), day)
    for name, model in catalog.MODELS.items():
        assert f'"{name}"' in names or model.dimensions
        assert str(model.shutdown) == days.get(name, "None"), name


# --- the server ---------------------------------------------------------------------------


def test_python_m_local_model_serves_and_says_how_to_use_it(desk: Any) -> None:
    command = [sys.executable, "-m", "local_model", "--port", str(desk.port)]
    process = subprocess.Popen(
        command, cwd=TOP, env=desk.environment(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(5)]
    base = f"http://127.0.0.1:{desk.port}/v1"
    assert "This is not OpenAI" in lines[0]
    assert base in lines[1]
    assert f"export OPENAI_BASE_URL={base} OPENAI_API_KEY=sk-local" in lines[3]
    assert local_model.is_running(base)
    again = desk.run("-m", "local_model", "--port", str(desk.port))
    assert (again.returncode, "Already running" in again.stdout) == (0, True)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    process.stdout.close()
    assert not local_model.is_running(base)
    for port in ("x", "99999"):
        bad = desk.run("-m", "local_model", "--port", port)
        assert (bad.returncode, bad.stderr.count("\n")) == (2, 1)


def test_what_is_no_local_model_is_not_taken_for_one(server: tuple[str, Path]) -> None:
    for address in (f"{server[0]}/v1", "http://127.0.0.1:1/v1", "", "http://[", "x:y/v1"):
        assert not local_model.is_running(address)


FORKED = """
import errno, os, socket, local_model
port = int(local_model.start().base_url.split(":")[2].removesuffix("/v1"))
parent = os.getpid()
if os.fork():
    os._exit(0)  # the parent dies, and the server with it
while os.getppid() == parent:
    os.sched_yield()
with socket.socket() as probe:
    probe.settimeout(20)
    print(probe.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_keep_the_port_of_a_parent_that_is_gone() -> None:
    assert python(FORKED) == "True\n"


def test_it_imports_nothing_but_the_guard_and_the_loop_of_local_langfuse() -> None:
    allowed = {"local_langfuse", "local_langfuse.guard", "local_langfuse.wire"}
    for file in (TOP / "local_model").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                top = name.split(".")[0]
                assert top not in {"common", "openai", "langfuse", "pydantic", "recipes"}, file
                assert top != "local_langfuse" or name in allowed, file


def test_the_door_is_guarded_and_every_refusal_is_in_openais_form(url: str) -> None:
    host = url.split("/")[2]

    def get(method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(host)
        sent = {"Authorization": "Bearer x", **headers}
        connection.request(method, path, body, {k: v for k, v in sent.items() if v})
        answer = connection.getresponse()
        assert answer.headers["x-local-model"] == "true"
        assert answer.headers["x-request-id"]
        told = json.loads(answer.read())["error"]
        connection.close()
        assert told.keys() == {"message", "type", "param", "code"}
        return answer.status, told["message"]

    assert get("GET", "/v1/models", Authorization="")[0] == 401
    assert get("GET", "/v1/models", Host="evil.example")[0] == 421
    assert get("GET", "/v1/models", Origin="http://evil.example")[0] == 403
    assert get("GET", "/v1/foo") == (404, "Invalid URL (GET /v1/foo)")
    assert get("GET", "/v1/chat/completions")[0] == 405
    assert get("GET", "/v1/responses/resp_1")[0] == 404
    assert "nothing is stored" in get("DELETE", "/v1/responses/resp_1")[1]
    assert "could not parse" in get("POST", "/v1/responses", b"{")[1]
    assert get("POST", "/v1/chat/completions", b"[" * 200_000)[0] == 413
    assert get("POST", "/v1/responses", b" " * (server.MOST_BYTES + 1))[0] == 413
