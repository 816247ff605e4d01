"""See your first trace, and know that it is stored.

An answer from a model leaves no record of what was asked, which text the model was given,
how long it took or what it cost. A trace keeps all of that, step by step. Send one, then
read it back: a trace that only left your program may never have arrived.

Run it:

    python 01_langfuse_setup.py

The traces:

    write-answer         generation

    answer-question      chain       x 4
      find-passages      retriever
      write-answer       generation

Try next: change QUESTION to "What does express delivery cost?", run again, and look at the
output of `find-passages`. Is the search to blame for the answer, or the model?
"""

import os
import time
from typing import Any

from langfuse import Langfuse, get_client, observe
from langfuse.openai import OpenAI

from common.client import connect, tracing_is_on
from common.console import show_answer, show_line, show_section, show_table, show_trace
from common.retriever import search

QUESTION = "Can I return shoes after 20 days?"


# %% 1. Connect, and make one call
#
# This is all you write in an app of your own. `Langfuse()` and `OpenAI()` take their keys
# and addresses from the environment. Here `connect()` has put them there: yours, if you
# have set them, or those of a local Langfuse and a local model.


def ask(instruction: str, question: str) -> str:
    """Check the keys, make one traced call, and return its answer.

    In Langfuse: open Tracing. The row `write-answer` is this call, with tokens and cost.
    """
    langfuse = Langfuse()
    langfuse.auth_check()  # raises if Langfuse does not answer, or refuses the keys
    response = OpenAI().chat.completions.create(
        name="write-answer",
        model=os.environ["OPENAI_MODEL"],
        messages=[
            {"role": "system", "content": instruction},
            {"role": "user", "content": question},
        ],
        max_completion_tokens=500,  # includes what the model thinks before it answers
    )
    langfuse.flush()
    return response.choices[0].message.content or ""


# %% 2. Trace a whole request, in three ways
#
# A trace is everything that happened for one request. Its steps are observations, nested
# like your function calls. There are three ways to make one, and all leave the same tree.


def write_answer(client: OpenAI, question: str, passages: list[str], **parent: str) -> str:
    """Ask the model to answer from these passages.

    In Langfuse: select `write-answer` to see the messages as sent, the tokens and the cost.
    """
    response = client.chat.completions.create(
        name="write-answer",
        model=os.environ["OPENAI_MODEL"],
        messages=[
            {"role": "system", "content": "Answer only from:\n" + "\n".join(passages)},
            {"role": "user", "content": question},
        ],
        max_completion_tokens=500,
        **parent,
    )
    return response.choices[0].message.content or ""


@observe(name="find-passages", as_type="retriever")
def find_passages(question: str) -> list[str]:
    """Return the handbook passages nearest to the question.

    In Langfuse: select `find-passages`. Its output is all that the model was given to read.
    """
    return [passage.text for passage in search(question)]


@observe(name="answer-question", as_type="chain")
def answer_with_decorator(client: OpenAI, question: str) -> str:
    """Trace with the decorator: for functions of your own.

    In Langfuse: select the root. Its duration is what the user waited for.
    """
    return write_answer(client, question, find_passages(question))


def answer_with_block(client: OpenAI, question: str) -> str:
    """Trace with a `with` block: for a few lines inside a function.

    In Langfuse: the tree is the same. An exception marks the blocks it passes through.
    """
    langfuse = get_client()
    with langfuse.start_as_current_observation(
        name="answer-question", as_type="chain", input=question
    ) as root:
        with langfuse.start_as_current_observation(
            name="find-passages", as_type="retriever", input=question
        ) as step:
            passages = [passage.text for passage in search(question)]
            step.update(output=passages)
        answer = write_answer(client, question, passages)
        root.update(output=answer)
    return answer


def answer_by_hand(client: OpenAI, question: str) -> str:
    """Trace by hand: for callbacks and queues, where start and end are far apart.

    In Langfuse: the same tree again. Without its `end()`, an observation never arrives.
    """
    root = get_client().start_observation(name="answer-question", as_type="chain", input=question)
    step = root.start_observation(name="find-passages", as_type="retriever", input=question)
    passages = [passage.text for passage in search(question)]
    step.update(output=passages).end()
    answer = write_answer(
        client, question, passages, trace_id=root.trace_id, parent_observation_id=root.id
    )
    root.update(output=answer).end()
    return answer


# %% 3. Write for the person who reads the trace
#
# Name a step after what it does, `answer-question`, and never after what it works on: you
# will count and compare by that name. Let the root say what was asked and what was
# answered. The decorator records all arguments, so a client object gets in the way.


@observe(name="answer-question", as_type="chain", capture_input=False)
def answer_for_readers(client: OpenAI, question: str) -> str:
    """Trace with the decorator, and set the input by hand.

    In Langfuse: select the root. The input is the question; the first root of section 2
    has `args` there, with a client among them.
    """
    get_client().update_current_span(input=question)
    return write_answer(client, question, find_passages(question))


# %% 4. Read it back
#
# A trace that was sent can be read a little later, on Langfuse Cloud after some seconds. So
# ask until all of it is there, and give up at some point: that is how you know it is stored.


def read_back(langfuse: Langfuse, trace_id: str, steps: int) -> list[tuple[str, Any, Any]]:
    """Return name, input and output of a trace's steps, once this many are stored.

    In Langfuse: these are the rows of the tree. `fields` also takes `usage` and `metadata`.
    """
    deadline = time.monotonic() + 25
    while True:
        page = langfuse.api.observations.get_many(trace_id=trace_id, fields="core,basic,io")
        if len(page.data) >= steps or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    oldest_first = sorted(page.data, key=lambda node: node.start_time)
    return [(node.name or "", node.input, node.output) for node in oldest_first]


def main() -> None:
    """Run the sections in order; each is followed by the trace that it left."""
    connect()
    show_section("1. Connect, and make one call")
    if tracing_is_on():
        asked = "Can I return shoes after 20 days?"
        show_answer(asked, ask("Unworn shoes can be returned within 30 days.", asked))
        show_trace()
    else:
        show_line("  Skipped: tracing is off, so there is nothing to connect to.")

    langfuse, client = Langfuse(), OpenAI()
    show_section("2. Trace a whole request, in three ways")
    for answer in (answer_with_decorator, answer_with_block, answer_by_hand):
        show_answer(f"{QUESTION} ({answer.__name__})", answer(client, QUESTION))
        show_trace()

    show_section("3. Write for the person who reads the trace")
    show_answer(QUESTION, answer_for_readers(client, QUESTION))
    stored = show_trace()

    show_section("4. Read it back")
    if stored:
        rows = read_back(langfuse, stored[0].trace_id or "", steps=3)
        show_table(("step", "input", "output"), rows)
    else:
        show_line("  Skipped: nothing is stored.")


if __name__ == "__main__":
    main()
