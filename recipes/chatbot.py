"""Chat in the terminal, and keep every conversation.

A chat that went wrong is hard to repeat: nobody remembers what was said before. Here
each turn is a trace with its wait, its cost and what the user thought of it, and one
session holds the turns together.

Run it:

    python -m recipes.chatbot

Each turn has this shape:

    answer-turn         chain
      write-reply       generation
      clean-up-reply    span

Try next: say "My name is Ada." and ask "What is my name?"; then set REMEMBERED_TURNS to 0
and do it again. Or chat with a model on your own machine, here one in Ollama:

    OPENAI_BASE_URL=http://localhost:11434/v1 OPENAI_MODEL=llama3.2 python -m recipes.chatbot
"""

import os
import re
import sys
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

import openai
from langfuse import Langfuse, get_client, observe, propagate_attributes
from langfuse.openai import OpenAI

from common import console
from common.client import connect
from common.errors import explain_model
from common.readback import sent_count
from common.retriever import handbook

with suppress(ImportError):  # arrow keys and history at the prompt; Windows has its own
    import readline  # noqa: F401

INSTRUCTION = (
    "You are the assistant of a small shoe shop. Answer in at most two sentences, from what "
    "the customer said and the passages below. If they do not answer the question, say "
    '"The handbook does not say."\n'
)
REMEMBERED_TURNS = 6  # what the model is told again; a longer memory costs more each turn
HELP = "Commands: /feedback 5 what you think of the last answer (1 to 5), /new, /quit or Ctrl-C."
ShowPieces = Callable[[Iterable[str]], None]  # prints each piece as soon as it is there


# %% 1. Answer a turn, word by word
#
# The user reads along, so the wait that counts is the one for the first word. A stream can
# break or be stopped at any word; what the user has read until then is stored all the same.


def stream_reply(
    client: OpenAI, messages: list[dict[str, Any]], written: list[str]
) -> Generator[str, None, None]:
    """Yield the reply piece by piece, and add each piece to `written`.

    In Langfuse: select `write-reply` and compare the time to first token with the latency.
    """
    with client.chat.completions.create(
        name="write-reply",
        model=os.environ["OPENAI_MODEL"],
        messages=messages,
        stream=True,
        stream_options={"include_usage": True},
        max_completion_tokens=500,
    ) as stream:
        for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                written.append(chunk.choices[0].delta.content)
                yield written[-1]


@observe(name="answer-turn", as_type="chain", capture_input=False)
def answer_turn(client: OpenAI, messages: list[dict[str, Any]], show: ShowPieces) -> str:
    """Show the reply while it is written, and return it cleaned up.

    In Langfuse: filter by level. ERROR is a model that failed, WARNING a user who did not
    want to read to the end.
    """
    langfuse, written = get_client(), list[str]()
    langfuse.update_current_span(input=messages[-1]["content"])
    try:
        with closing(stream_reply(client, messages, written)) as pieces:  # stopped: ends here
            show(pieces)
        return clean_up_reply("".join(written))
    except KeyboardInterrupt:
        langfuse.update_current_span(level="WARNING", status_message="stopped by the user")
        raise
    finally:
        # What is returned, if anything is, takes the place of this.
        langfuse.update_current_span(output="".join(written))


# %% 2. Clean up what is kept
#
# What stays is sent again with each further turn, and paid for again. Models that reason
# may write their thoughts into the reply, and some write nothing at all.


@observe(name="clean-up-reply")
def clean_up_reply(reply: str) -> str:
    """Return a reply without thoughts and without blank lines in a row.

    Raises ValueError where nothing is left: that is not an answer.

    In Langfuse: select `clean-up-reply`, and see what a user saw and later turns did not.
    """
    text = re.sub(r"<think>.*?(</think>|\Z)", "", reply, flags=re.DOTALL)
    text = re.sub(r"\n\s*\n", "\n\n", text).strip()
    if not text:
        raise ValueError("The model answered with nothing.")
    return text


# %% 3. Remember the conversation, but not for ever
#
# A session joins the turns. A turn that failed is in the session, so that somebody sees
# it, but not in the memory: a question without an answer would confuse the next one.


@dataclass
class Conversation:
    """A session: the trace of each turn, and the turns that the model is told again."""

    session_id: str = field(default_factory=lambda: f"chat-{uuid.uuid4()}")
    trace_ids: list[str] = field(default_factory=list)
    answered: str = ""  # the trace of the last answer, if the last turn had one
    memory: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=REMEMBERED_TURNS))


def take_turn(client: OpenAI, conversation: Conversation, text: str, show: ShowPieces) -> None:
    """Answer what the user typed, in this conversation; what fails is traced and raised.

    In Langfuse: open Sessions and select the session, and you read the conversation.
    """
    messages = [{"role": "system", "content": INSTRUCTION + "\n".join(handbook())}]
    for said, replied in conversation.memory:
        messages.append({"role": "user", "content": said})
        messages.append({"role": "assistant", "content": replied})
    messages.append({"role": "user", "content": text})
    trace_id = get_client().create_trace_id()
    conversation.trace_ids.append(trace_id)
    conversation.answered = ""
    with propagate_attributes(session_id=conversation.session_id):
        reply = answer_turn(client, messages, show, langfuse_trace_id=trace_id)
    conversation.answered = trace_id
    conversation.memory.append((text, reply))


# %% 4. Let the user rate the answer
#
# The best judge of an answer is still there, and one line away.


def rate_turn(langfuse: Langfuse, trace_id: str, stars: int, comment: str) -> None:
    """Store one to five stars as a score from 0 to 1; a second opinion replaces the first.

    In Langfuse: sort traces by `user-rating`, and read the worst ones with their comments.
    """
    langfuse.create_score(
        name="user-rating",
        value=(stars - 1) / 4,
        data_type="NUMERIC",
        trace_id=trace_id,
        comment=comment,
        score_id=f"{trace_id}-user-rating",
    )


def run_command(langfuse: Langfuse, conversations: list[Conversation], line: str) -> str:
    """Do what a line with a slash asks for, and return what to tell the user."""
    name, _, rest = line.partition(" ")
    if name == "/new":
        conversations.append(Conversation())
        return "A new conversation."
    if name != "/feedback":
        return f"There is no {name}. {HELP}"
    rating = re.fullmatch(r"\s*([1-5])(?:\s+(.*))?", rest)
    if not rating:
        return "Write a number from 1 to 5, and a comment if you like: /feedback 5 that was it"
    trace_id = conversations[-1].answered
    if not trace_id:
        return "There is no answer to rate: ask something first."
    if not sent_count(trace_id):
        return "Not stored: tracing is off, or LANGFUSE_SAMPLE_RATE left this turn out."
    rate_turn(langfuse, trace_id, int(rating[1]), rating[2] or "")
    return f"Rated {rating[1]} of 5. Another /feedback replaces it."


# %% 5. Say where the conversation is kept
#
# The screen forgets. What a colleague will read tomorrow is what is stored.


def show_conversation(langfuse: Langfuse, conversation: Conversation) -> None:
    """Print the last turn of a conversation as it is stored, and where to read all of it."""
    name, last = conversation.session_id, conversation.trace_ids[-1]
    console.show_section(f"The last turn of {name}")
    console.show_trace(last)
    if sent_count(last):
        url = langfuse.get_trace_url(trace_id=last) or ""
        link = url.replace(f"traces/{last}", f"sessions/{name}")
        console.show_link("the conversation     ", link)


def main() -> None:
    """Chat until /quit, the end of input or Ctrl-C; then show what was stored."""
    connect()
    langfuse, client, conversations = Langfuse(), OpenAI(timeout=60), [Conversation()]
    console.show_line(HELP)
    prompt = "> " if sys.stdin.isatty() else ""
    with suppress(EOFError, KeyboardInterrupt):
        while (line := input(prompt).strip()) != "/quit":
            if line.startswith("/"):
                console.show_line(f"    {run_command(langfuse, conversations, line)}")
            elif line:
                try:
                    take_turn(client, conversations[-1], line, console.show_pieces)
                except (openai.OpenAIError, ValueError) as error:
                    console.show_line(f"    No answer: {explain_model(error) or error}", "red")
    console.show_line("\nGoodbye.")  # on a line of its own: the terminal has written ^C
    langfuse.flush()  # hand over what is waiting before anyone opens the links
    for conversation in conversations:
        if conversation.trace_ids:
            show_conversation(langfuse, conversation)


if __name__ == "__main__":
    main()
