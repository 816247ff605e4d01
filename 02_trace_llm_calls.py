"""See every call of a model.

An application that calls a model is a black box with a bill. Trace each call, and you see
what was asked, what came back, how long the user waited, what it cost, and who asked.

Run it:

    python 02_trace_llm_calls.py

The traces:

    write-answer           generation

    classify-question      generation

    stream-answer          generation  x 2

    answer-many            chain
      write-answer         generation
      write-answer         generation
      write-answer         generation

    answer-with-tool       agent
      choose-tool          generation
      look-up-order        tool
      write-answer         generation

    answer-with-fallback   chain
      write-answer         generation
      write-answer         generation

    answer-turn            chain       x 2
      write-answer         generation

Try next: take `stream_options` out of `stream_chat`, run again, and look for the tokens
and the cost of the first `stream-answer`.
"""

import asyncio
import json
import os
import uuid
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import openai
from langfuse import Langfuse, get_client, observe, propagate_attributes
from langfuse.openai import AsyncOpenAI, OpenAI

from common.client import connect
from common.console import end_sections, section, show_answer, show_pieces, show_trace
from common.retriever import handbook

QUESTION = "Can I return shoes after 20 days?"
MANY = ["How can I pay?", "What does express delivery cost?", "How long is the warranty?"]
ORDER_QUESTION = "Where is my order A-1042?"
MISSING_MODEL = "gpt-6-lunna"  # a typo, as happens in a deployment
CHAT = ["Do your shoes run small?", "Is an exchange for another size free?"]
Messages = list[dict[str, Any]]


# %% 1. Change one import, and every call is traced
#
# `langfuse.openai` is the `openai` package with tracing around it. The call, its answer and its
# errors stay what they were.


def messages_about(*questions: str) -> Messages:
    """Return a chat about the shop's handbook: the instruction, then the questions."""
    told = "Answer in one sentence, only from these passages:\n" + "\n".join(handbook())
    asked = [{"role": "user", "content": question} for question in questions]
    return [{"role": "system", "content": told}, *asked]


def write_answer(client: OpenAI, messages: Messages, model: str = "") -> str:
    """Ask the model. `name` is for Langfuse; every other argument is OpenAI's own.

    In Langfuse: select `write-answer`. You see the messages, the answer, tokens and cost.
    """
    response = client.chat.completions.create(
        name="write-answer",
        model=model or os.environ["OPENAI_MODEL"],
        messages=messages,
        max_completion_tokens=500,  # includes what the model thinks before it answers
    )
    return response.choices[0].message.content or ""


# %% 2. Trace any other model by hand
#
# A model of your own, here a list of words, has no wrapper: say yourself what a wrapper would
# say. Langfuse has no price for it, so give the cost too, with its `total`.

USD_PER_WORD = 0.000_000_4  # what our own server costs us per word
TOPICS = {"returns": ("return", "refund"), "delivery": ("deliver", "order", "arrive")}


def classify_question(question: str) -> str:
    """Sort a question into a topic, traced as a call of our own model.

    In Langfuse: it has a model, usage and a cost like any other call.
    """
    with get_client().start_as_current_observation(
        name="classify-question", as_type="generation", model="shop-topics", input=question
    ) as generation:
        found = [topic for topic, signs in TOPICS.items() if any(s in question for s in signs)]
        topic = found[0] if found else "other"
        words = len(question.split())
        cost = {"input": words * USD_PER_WORD, "total": words * USD_PER_WORD}
        usage = {"input": words, "output": 1}
        generation.update(output=topic, usage_details=usage, cost_details=cost)
    return topic


# %% 3. Stream, and measure time to first token
#
# A streamed answer feels fast when its first word comes early; the wrapper notes when. Chat
# sends usage only if you ask for it, in a last chunk without choices.


def stream_chat(client: OpenAI, question: str) -> Iterator[str]:
    """Yield an answer piece by piece, from Chat Completions.

    In Langfuse: time to first token is how long the user saw nothing.
    """
    stream = client.chat.completions.create(
        name="stream-answer",
        model=os.environ["OPENAI_MODEL"],
        messages=messages_about(question),
        stream=True,
        stream_options={"include_usage": True},
        max_completion_tokens=500,
    )
    for chunk in islice(stream, 2_000):  # a server may ignore the token limit
        if chunk.choices:
            yield chunk.choices[0].delta.content or ""


def stream_response(client: OpenAI, question: str) -> Iterator[str]:
    """Yield an answer piece by piece, from the Responses API: usage comes without asking."""
    stream = client.responses.create(
        name="stream-answer",
        model=os.environ["OPENAI_MODEL"],
        input=messages_about(question),
        stream=True,
        max_output_tokens=500,
    )
    for event in islice(stream, 2_000):  # as above
        if event.type == "response.output_text.delta":
            yield event.delta


# %% 4. Ask many at once
#
# With asyncio the calls wait together, and all become children of the current observation.


@observe(name="answer-many", as_type="chain")
async def answer_many(questions: list[str]) -> list[str]:
    """Answer all questions at the same time; the answers keep the order of the questions.

    In Langfuse: switch to the timeline. A staircase would mean that they waited in turn.
    """
    async with AsyncOpenAI() as client:
        calls = [
            client.chat.completions.create(
                name="write-answer",
                model=os.environ["OPENAI_MODEL"],
                messages=messages_about(question),
                max_completion_tokens=500,
            )
            for question in questions
        ]
        return [each.choices[0].message.content or "" for each in await asyncio.gather(*calls)]


# %% 5. Let the model call a tool
#
# The model asks for a tool, and your code runs it. Some models ask for tools that do not exist,
# or send arguments that do not fit: let them read the error, and they can still answer.
# GPT-6 models that reason take tools only through the Responses API.

ORDERS = {"A-1042": {"status": "shipped", "arrives": "Thursday"}}
TOOLS = [
    {
        "type": "function",
        "name": "look_up_order",
        "description": "Find out where an order is.",
        "parameters": {"type": "object", "properties": {"order_id": {"type": "string"}}},
    }
]


def look_up_order(order_id: str) -> dict[str, str]:
    """Return what is known about an order."""
    return ORDERS.get(order_id, {"status": "not found"})


FUNCTIONS: dict[str, Callable[..., dict[str, str]]] = {"look_up_order": look_up_order}


def run_tool(name: str, arguments: str) -> dict[str, str]:
    """Run the tool a model asked for; its mistakes become an answer that it can read.

    In Langfuse: the input is what the model wrote, and Status is ERROR if that did not fit.
    """
    known = name.replace("_", "-") if name in FUNCTIONS else "unknown-tool"  # a name of ours
    with get_client().start_as_current_observation(
        name=known, as_type="tool", input={"name": name, "arguments": arguments}
    ) as tool:
        try:
            found = FUNCTIONS[name](**json.loads(arguments))
        except (KeyError, TypeError, ValueError) as error:
            found = {"error": repr(error)}
            tool.update(level="ERROR", status_message=repr(error))
        tool.update(output=found)
    return found


@observe(name="answer-with-tool", as_type="agent", capture_input=False)
def answer_with_tool(client: OpenAI, question: str) -> str:
    """Let the model choose a tool, run it, and let the model answer.

    In Langfuse: read from the top what the model asked for, what it got, what it made of it.
    """
    get_client().update_current_span(input=question)
    asked: dict[str, Any] = {"model": os.environ["OPENAI_MODEL"], "max_output_tokens": 500}
    said: list[Any] = [{"role": "user", "content": question}]
    choice = client.responses.create(name="choose-tool", input=said, tools=TOOLS, **asked)
    calls = [item for item in choice.output if item.type == "function_call"]
    if not calls:
        return str(choice.output_text)
    said += choice.output
    for call in calls:
        found = json.dumps(run_tool(call.name, call.arguments))
        said.append({"type": "function_call_output", "call_id": call.call_id, "output": found})
    answer = client.responses.create(name="write-answer", input=said, **asked)
    return str(answer.output_text)


# %% 6. Show failures, even where the user sees none
#
# When a second model steps in, nobody notices that the first one failed. The trace does. All
# that `openai` tries by itself is one generation: three attempts of up to ten minutes, unless
# you set a limit, `OpenAI(timeout=…, max_retries=…)`.


@observe(name="answer-with-fallback", as_type="chain", capture_input=False)
def answer_with_fallback(client: OpenAI, question: str, models: list[str]) -> str:
    """Ask one model after the other until one answers.

    In Langfuse: clear "Is Root Observation", and set Status to ERROR. The trace of the failed
    `write-answer` shows which model answered instead.
    """
    get_client().update_current_span(input=question)
    for model in models:
        try:
            return write_answer(client, messages_about(question), model)
        except openai.OpenAIError:
            continue
    get_client().update_current_span(level="ERROR", status_message=f"no answer from {models}")
    return "Sorry, I cannot answer at the moment."


# %% 7. Say who asked, and in which conversation
#
# A trace is one turn of a conversation, a session is all of it. You will filter by tags and
# metadata: a feature flag, a variant, a tier. The block reaches only what starts inside it.


@observe(name="answer-turn", as_type="chain", capture_input=False)
def answer_turn(client: OpenAI, messages: Messages) -> str:
    """Answer the last message of a conversation.

    In Langfuse: open Sessions to read the conversation, and Users for what a person costs.
    """
    get_client().update_current_span(input=messages[-1]["content"])
    return write_answer(client, messages)


def hold_conversation(client: OpenAI, session_id: str, questions: list[str]) -> list[str]:
    """Answer a customer's questions in turn: one trace per turn, all in one session.

    In Langfuse: filter Tracing by the metadata key `tier`, or by the tag `channel:web`.
    """
    messages, answers = messages_about(), list[str]()
    with propagate_attributes(
        user_id="customer-17",
        session_id=session_id,
        tags=["team:support", "channel:web"],
        metadata={"flag_short_answers": "on", "variant": "b", "tier": "gold"},
        version="prompt-3",
    ):
        for question in questions:
            messages.append({"role": "user", "content": question})
            answers.append(answer_turn(client, messages))
            messages.append({"role": "assistant", "content": answers[-1]})
    return answers


def main() -> None:
    """Run the sections in order; one that fails says so, and the others still run."""
    connect()
    Langfuse()
    client = OpenAI(timeout=60, max_retries=1)  # see section 6
    with section("1. Change one import, and every call is traced"):
        show_answer(QUESTION, write_answer(OpenAI(), messages_about(QUESTION)))
        show_trace()
    with section("2. Trace any other model by hand"):
        show_answer(QUESTION, classify_question(QUESTION))
        show_trace()
    with section("3. Stream, and measure time to first token: Chat Completions"):
        show_pieces(stream_chat(client, QUESTION))
        show_trace()
    with section("   The same from the Responses API"):
        show_pieces(stream_response(client, QUESTION))
        show_trace()
    with section("4. Ask many at once"):
        for question, answer in zip(MANY, asyncio.run(answer_many(MANY)), strict=True):
            show_answer(question, answer)
        show_trace()
    with section("5. Let the model call a tool"):
        show_answer(ORDER_QUESTION, answer_with_tool(client, ORDER_QUESTION))
        show_trace()
    with section("6. Show failures, even where the user sees none"):
        models = [MISSING_MODEL, os.environ["OPENAI_MODEL"]]
        show_answer(QUESTION, answer_with_fallback(client, QUESTION, models))
        show_trace()
    with section("7. Say who asked, and in which conversation"):
        answers = hold_conversation(client, f"chat-{uuid.uuid4().hex[:8]}", CHAT)
        for question, answer in zip(CHAT, answers, strict=True):
            show_answer(question, answer)
        show_trace()
    end_sections()


if __name__ == "__main__":
    main()
