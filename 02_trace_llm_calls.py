"""See every model call.

An application that calls a model is a black box with a bill. Trace each call, and you
see what was asked, what came back, how long the user waited, what it cost, and who asked.

Run it:

    python 02_trace_llm_calls.py

The traces have these shapes, one per section:

    write-answer           generation

    classify-question      generation

    stream-answer          generation

    answer-many            chain
      write-answer         generation
      write-answer         generation
      write-answer         generation
      write-answer         generation
      write-answer         generation

    answer-with-tool       agent
      choose-tool          generation
      look-up-order        tool
      write-answer         generation

    answer-with-retry      chain
      write-answer         generation
      write-answer         generation

    answer-turn            chain       x 2
      write-answer         generation

Try next: take `stream_options` out of `stream_answer`, run again, and look for the
tokens and the cost of `stream-answer`.
"""

import asyncio
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

import openai
from langfuse import Langfuse, get_client, observe, propagate_attributes
from langfuse.api import ObservationV2
from langfuse.openai import AsyncOpenAI, OpenAI

from common.client import connect, tracing_is_on
from common.console import (
    show_answer,
    show_line,
    show_pieces,
    show_result,
    show_section,
    show_trace,
)
from common.readback import read_trace
from common.retriever import handbook

QUESTION = "Can I return shoes after 20 days?"
MANY_QUESTIONS = [
    "How long does standard delivery take?",
    "What does express delivery cost?",  # the local model gets this wrong: see lesson 3
    "How long is the warranty?",
    "How can I pay?",
    "How often do leather shoes need wax?",
]
ORDER_QUESTION = "Where is my order A-1042?"
MISSING_MODEL = "gpt-6-lunna"  # a typing error, as it happens in a deployment
CHAT = ["Do your shoes run small?", "Is an exchange for another size free?"]


# %% 1. Change one import, and every call is traced
#
# `langfuse.openai` is the `openai` package with tracing around it. The call, its answer
# and its errors stay what they were; model, messages, tokens and cost are recorded.


def messages_about(question: str) -> list[dict[str, Any]]:
    """Return the chat that asks for an answer from the shop's handbook."""
    instruction = "Answer in one sentence, only from these passages:\n"
    return [
        {"role": "system", "content": instruction + "\n".join(handbook())},
        {"role": "user", "content": question},
    ]


def write_answer(client: OpenAI, messages: list[dict[str, Any]], **trace: Any) -> str:
    """Ask the model. `name` and `trace_id` are for Langfuse; all other arguments are OpenAI's own.

    In Langfuse: select `write-answer`. The messages are shown as a conversation; under
    usage, cached input tokens are a bucket of their own, at a price of their own.
    """
    response = client.chat.completions.create(
        name="write-answer",
        model=os.environ["OPENAI_MODEL"],
        messages=messages,
        max_completion_tokens=500,  # reasoning tokens count too
        **trace,
    )
    return response.choices[0].message.content or ""


# %% 2. Trace any other model by hand
#
# For a model without a wrapper, such as this word list that sorts questions, say yourself
# what a wrapper would have said. Langfuse has no price for it, so the cost is given too,
# with its `total`: Langfuse adds that up by itself from `input` and `output` only.

USD_PER_WORD = 0.000_000_4  # what our own server costs us for each word that it reads
TOPICS = {"returns": ("return", "refund"), "delivery": ("deliver", "order", "arrive")}


def classify_question(question: str, trace_id: str) -> str:
    """Sort a question into a topic, traced as a call of our own model.

    In Langfuse: select `classify-question`. Model, parameters, usage and cost look just
    like those of a wrapped call, and the dashboards count them together.
    """
    with get_client().start_as_current_observation(
        name="classify-question",
        as_type="generation",
        model="shop-topics",
        model_parameters={"fallback": "other"},
        input=question,
        trace_context={"trace_id": trace_id},
    ) as generation:
        asked = question.lower()
        found = (topic for topic, words in TOPICS.items() if any(w in asked for w in words))
        topic = next(found, "other")
        words_read = len(question.split())
        cost = words_read * USD_PER_WORD
        generation.update(
            output=topic,
            usage_details={"input": words_read, "output": 1},
            cost_details={"input": cost, "total": cost},
        )
    return topic


# %% 3. Stream, and measure how long the user stares at nothing
#
# A streamed answer feels fast when its first word comes early, however long the rest
# takes. The wrapper notes the moment of the first chunk. The last chunk has no choices.


def stream_answer(client: OpenAI, question: str, trace_id: str) -> Iterator[str]:
    """Yield an answer piece by piece, as the model writes it.

    In Langfuse: select `stream-answer` and compare the time to first token with the
    latency. The first is what the user waits for.
    """
    stream = client.chat.completions.create(
        name="stream-answer",
        model=os.environ["OPENAI_MODEL"],
        messages=messages_about(question),
        stream=True,
        stream_options={"include_usage": True},
        max_completion_tokens=500,
        trace_id=trace_id,
    )
    yield from (chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


# %% 4. Ask many at once
#
# With asyncio the calls wait for the model together. Each task inherits the current
# observation from where it was started, so all five land under the same parent.


async def write_answer_async(client: AsyncOpenAI, question: str) -> str:
    """Ask the model once; the same call as `write_answer`, awaited."""
    response = await client.chat.completions.create(
        name="write-answer",
        model=os.environ["OPENAI_MODEL"],
        messages=messages_about(question),
        max_completion_tokens=500,
    )
    return response.choices[0].message.content or ""


@observe(name="answer-many", as_type="chain", capture_input=False)
async def answer_many(client: AsyncOpenAI, questions: list[str]) -> list[str]:
    """Answer all questions at the same time, in their order.

    In Langfuse: in the timeline of `answer-many` the five bars are stacked
    and overlap. A staircase would mean that they waited for each other.
    """
    get_client().update_current_span(input=questions)
    return await asyncio.gather(*(write_answer_async(client, each) for each in questions))


def wall_and_sum(observations: Iterable[ObservationV2]) -> tuple[float, float]:
    """Return the stored duration of the root, and the sum of its generations, in seconds.

    The sum is what the calls would have taken one after the other.
    """
    seconds = {"wall": 0.0, "sum": 0.0}
    for node in observations:
        seconds["wall" if node.is_root_observation else "sum"] += node.latency or 0
    return seconds["wall"], seconds["sum"]


# %% 5. Let the model call a tool
#
# The model only asks for a tool; your code runs it. Trace it beside the generation that
# asked, and a wrong answer shows at once whether the question to the tool was wrong,
# the tool's answer, or what the model made of it.

ORDERS = {"A-1042": {"status": "shipped", "arrives": "Thursday"}}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "name": "look_up_order",
        "description": "Find out where an order is.",
        "parameters": {
            "type": "object",
            "properties": {"order_id": {"type": "string"}},
            "required": ["order_id"],
        },
    }
]


@observe(name="look-up-order", as_type="tool", capture_input=False)
def look_up_order(order_id: str) -> dict[str, str]:
    """Return what is known about an order."""
    get_client().update_current_span(input={"order_id": order_id})
    return ORDERS.get(order_id, {"status": "not found"})


@observe(name="answer-with-tool", as_type="agent", capture_input=False)
def answer_with_tool(client: OpenAI, question: str) -> str:
    """Let the model decide, run the tools that it asks for, and let it answer.

    In Langfuse: select `choose-tool`. Its output is the request, not an answer; the
    arguments are exactly what `look-up-order` below it received.
    """
    get_client().update_current_span(input=question)
    model = os.environ["OPENAI_MODEL"]
    said: list[Any] = [{"role": "user", "content": question}]
    choice = client.responses.create(
        name="choose-tool", model=model, input=said, tools=TOOLS, max_output_tokens=500
    )
    calls = [item for item in choice.output if item.type == "function_call"]
    if not calls:
        return str(choice.output_text)
    said += choice.output
    for call in calls:
        found = json.dumps(look_up_order(**json.loads(call.arguments)))
        said.append({"type": "function_call_output", "call_id": call.call_id, "output": found})
    answer = client.responses.create(
        name="write-answer", model=model, input=said, max_output_tokens=500
    )
    return str(answer.output_text)


# %% 6. Keep failures and retries apart
#
# A retry that succeeds hides its failure from the user. Each attempt of your own is a
# generation of its own, and the failed one carries level and message. What `openai`
# retries on its own (429 and 5xx, twice) stays inside one generation, which only gets
# slower; `max_retries=0` on the client hands those failures to you.


@observe(name="answer-with-retry", as_type="chain", capture_input=False)
def answer_with_retry(client: OpenAI, question: str, models: list[str]) -> str:
    """Try one model after the other until one of them exists.

    In Langfuse: filter by level ERROR. The failed `write-answer` shows the service's
    message; beside it stands the generation that answered instead.
    """
    get_client().update_current_span(input=question)
    for model in models:
        try:
            response = client.chat.completions.create(
                name="write-answer",
                model=model,
                messages=messages_about(question),
                max_completion_tokens=500,
            )
        except openai.NotFoundError:
            continue
        return response.choices[0].message.content or ""
    return "Sorry, I cannot answer at the moment."


# %% 7. Say who asked, and in which conversation
#
# A trace is one turn. A session joins the turns of one conversation, a user those of one
# person, and tags and metadata what you want to filter and group by. Open the block
# before the first child: what was started earlier does not get the attributes.


@observe(name="answer-turn", as_type="chain", capture_input=False)
def answer_turn(client: OpenAI, messages: list[dict[str, Any]]) -> str:
    """Answer the last message of a conversation.

    In Langfuse: open Sessions and select the session. You read the conversation turn by
    turn; Users shows what this person has cost.
    """
    get_client().update_current_span(input=messages[-1]["content"])
    return write_answer(client, messages)


def hold_conversation(client: OpenAI, questions: list[str], trace_ids: list[str]) -> list[str]:
    """Answer the questions in turn, each in a trace of its own, all in one session."""
    messages = messages_about("")[:1]
    answers = []
    with propagate_attributes(
        user_id="customer-17",
        session_id=f"chat-{trace_ids[0][:8]}",
        tags=["team:support", "channel:web"],
        metadata={"shop": "rotterdam"},
        version="prompt-3",
    ):
        for question, trace_id in zip(questions, trace_ids, strict=True):
            messages.append({"role": "user", "content": question})
            answers.append(answer_turn(client, messages, langfuse_trace_id=trace_id))
            messages.append({"role": "assistant", "content": answers[-1]})
    return answers


def who_asked(observations: Iterable[ObservationV2]) -> list[tuple[str, object]]:
    """Return what is stored at the root of a turn about its circumstances.

    In Langfuse: all of these are filters. Environment and release come from
    `LANGFUSE_TRACING_ENVIRONMENT` and `LANGFUSE_RELEASE`, the rest from the block above.
    """
    for root in observations:
        if root.is_root_observation:
            return [
                ("user", root.user_id),
                ("session", root.session_id),
                ("tags", ", ".join(root.tags or [])),
                ("metadata", f"shop: {(root.metadata or {}).get('shop')}"),
                ("environment", root.environment),
                ("release", root.release),
                ("version", root.version),
            ]
    return []


async def ask_many(questions: list[str], trace_id: str) -> list[str]:
    """Open an asynchronous client for as long as the questions take."""
    async with AsyncOpenAI(timeout=60) as client:
        return await answer_many(client, questions, langfuse_trace_id=trace_id)


def main() -> None:
    """Seven ways to call a model; then each trace, drawn as it was stored."""
    connect()
    langfuse, client = Langfuse(), OpenAI(timeout=60)
    ids = [langfuse.create_trace_id() for _ in range(8)]

    show_section("1. Change one import, and every call is traced")
    show_answer(QUESTION, write_answer(client, messages_about(QUESTION), trace_id=ids[0]))
    show_section("2. Trace any other model by hand")
    show_answer(QUESTION, classify_question(QUESTION, ids[1]))
    show_section("3. Stream, and measure how long the user stares at nothing")
    show_line(f"  {QUESTION}", "bold")
    show_pieces(stream_answer(client, QUESTION, ids[2]))
    show_section("4. Ask many at once")
    many = asyncio.run(ask_many(MANY_QUESTIONS, ids[3]))
    for question, answer in zip(MANY_QUESTIONS, many, strict=True):
        show_answer(question, answer)
    show_section("5. Let the model call a tool")
    show_answer(ORDER_QUESTION, answer_with_tool(client, ORDER_QUESTION, langfuse_trace_id=ids[4]))
    show_section("6. Keep failures and retries apart")
    models = [MISSING_MODEL, os.environ["OPENAI_MODEL"]]
    show_answer(QUESTION, answer_with_retry(client, QUESTION, models, langfuse_trace_id=ids[5]))
    show_section("7. Say who asked, and in which conversation")
    for question, answer in zip(CHAT, hold_conversation(client, CHAT, ids[6:]), strict=True):
        show_answer(question, answer)

    langfuse.flush()  # hand over what is waiting before anyone looks
    if tracing_is_on():
        show_section("What was stored, section by section")
        for trace_id in ids[:4]:
            show_trace(trace_id)
        wall, total = wall_and_sum(read_trace(langfuse, ids[3]))
        show_result("answer-many took", f"{wall:.3f} s; its five calls add up to {total:.3f} s")
        for trace_id in ids[4:7]:
            show_trace(trace_id)
        for name, value in who_asked(read_trace(langfuse, ids[6])):
            show_result(name, value)
        show_trace(ids[7])


if __name__ == "__main__":
    main()
