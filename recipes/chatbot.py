"""Chat in the terminal, and keep every conversation.

A chat that went wrong is hard to repeat: nobody remembers what was said before. Here each
turn is a trace with its time to first token, its cost and the user's rating, and a session
holds the turns of a conversation together.

Run it:

    python -m recipes.chatbot

Each turn has this shape:

    answer-turn         chain
      write-reply       generation
      clean-up-reply    span

Try next: say "My name is Ada." and ask "What is my name?"; then set REMEMBERED_TURNS to 0
and do it again. Or chat with a model on your own machine, for example one in Ollama:

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
REMEMBERED_TURNS = 6  # sent again with each question; a longer memory costs more per turn
HELP = "Commands: /feedback 5 thank you (rates the last answer, 1 to 5), /new, /quit or Ctrl-C."
ShowPieces = Callable[[Iterable[str]], None]  # prints each piece as it arrives


# %% 1. Answer a turn, word by word
#
# The user reads along, so the wait that matters is the one for the first word. A stream can
# break or be stopped at any word; what the user has read so far is stored all the same.


def stream_reply(
    client: OpenAI, messages: list[dict[str, Any]], written: list[str]
) -> Generator[str, None, None]:
    """Yield the reply piece by piece, and add each piece to `written`.

    In Langfuse: open a turn, select `write-reply` and compare its time to first token with
    its latency. The first is how long the user looked at an empty line.
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
def answer_turn(
    client: OpenAI, messages: list[dict[str, Any]], show: ShowPieces, trace_ids: list[str]
) -> str:
    """Show the reply while it is written, and return it cleaned up; add the trace's id first.

    In Langfuse: filter Tracing by Status (on the local page: Level). ERROR means that the
    model failed, WARNING that the user stopped the reply.
    """
    langfuse, written = get_client(), list[str]()
    trace_ids.append(langfuse.get_current_trace_id() or "")  # a turn that fails has one, too
    langfuse.update_current_span(input=messages[-1]["content"])
    try:
        with closing(stream_reply(client, messages, written)) as pieces:  # stopped: ends here
            show(pieces)
        return clean_up_reply("".join(written))
    except KeyboardInterrupt:
        langfuse.update_current_span(level="WARNING", status_message="stopped by the user")
        raise
    finally:
        # A return value replaces this; an exception leaves it.
        langfuse.update_current_span(output="".join(written))


# %% 2. Clean up what is kept
#
# A reply is sent again with each later turn, and paid for again. A reasoning model may write
# its thoughts into the reply, and some models write nothing at all.


@observe(name="clean-up-reply")
def clean_up_reply(reply: str) -> str:
    """Return a reply without its thoughts and its repeated blank lines.

    Raises ValueError if nothing is left: that is no answer.

    In Langfuse: select `clean-up-reply`. Its input is what the user saw, its output is what
    later turns are told.
    """
    text = re.sub(r"<think>.*?(</think>|\Z)", "", reply, flags=re.DOTALL)
    text = re.sub(r"\n\s*\n", "\n\n", text).strip()
    if not text:
        raise ValueError("The model answered with nothing.")
    return text


# %% 3. Remember the conversation, but not forever
#
# A session holds the turns together. A failed turn is part of the session, so that somebody
# sees it, but not of the memory: a question without an answer would confuse the model.


@dataclass
class Conversation:
    """A session: the trace of each turn, and the latest turns, which the model is told again."""

    session_id: str = field(default_factory=lambda: f"chat-{uuid.uuid4()}")
    trace_ids: list[str] = field(default_factory=list)  # of all turns; "" with tracing off
    is_answered: bool = False  # whether the last turn has an answer to rate
    memory: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=REMEMBERED_TURNS))


def take_turn(client: OpenAI, conversation: Conversation, text: str, show: ShowPieces) -> None:
    """Answer what the user typed in this conversation. A failure is traced, then raised.

    In Langfuse: open Sessions and select the session to read the conversation turn by turn.
    """
    messages = [{"role": "system", "content": INSTRUCTION + "\n".join(handbook())}]
    for said, replied in conversation.memory:
        messages.append({"role": "user", "content": said})
        messages.append({"role": "assistant", "content": replied})
    messages.append({"role": "user", "content": text})
    conversation.is_answered = False
    with propagate_attributes(session_id=conversation.session_id):
        reply = answer_turn(client, messages, show, conversation.trace_ids)
    conversation.is_answered = True
    conversation.memory.append((text, reply))


# %% 4. Let the user rate the answer
#
# The best judge of an answer is still at the keyboard, so a rating is one line to type. It
# becomes a score of the turn's trace, next to what the turn cost and how long it took.


def rate_turn(langfuse: Langfuse, trace_id: str, stars: int, comment: str) -> None:
    """Store one to five stars as a score from 0 to 1; a second rating replaces the first.

    In Langfuse: open the rated turn. Its scores show `user-rating` with the comment.

    In Langfuse (not on the local page): filter Tracing by the score `user-rating` to find the
    worst answers.
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
    """Carry out a command, and return what to tell the user."""
    name, _, rest = line.partition(" ")
    if name == "/new":
        conversations.append(Conversation())
        return "A new conversation."
    if name != "/feedback":
        return f"There is no {name}. {HELP}"
    rating = re.fullmatch(r"\s*([1-5])(?:\s+(.*))?", rest)
    if not rating:
        return "Write a number from 1 to 5, and a comment if you like: /feedback 5 thank you"
    if not conversations[-1].is_answered:
        return "There is no answer to rate: ask something first."
    trace_id = conversations[-1].trace_ids[-1]
    if not sent_count(trace_id):
        return "Not stored: tracing is off, or LANGFUSE_SAMPLE_RATE left this turn out."
    rate_turn(langfuse, trace_id, int(rating[1]), rating[2] or "")
    return f"Rated {rating[1]} of 5. Another /feedback replaces it."


# %% 5. Show what is stored
#
# The terminal forgets. A colleague who reads the conversation tomorrow sees only what was
# stored, so the last thing the chat does is read it back.


def show_conversation(langfuse: Langfuse, conversation: Conversation) -> None:
    """Print the last turn of a conversation as stored, and a link to all of it."""
    name, last = conversation.session_id, conversation.trace_ids[-1]
    console.show_section(f"The last turn of {name}")
    console.show_trace(last)
    if sent_count(last):
        url = langfuse.get_trace_url(trace_id=last) or ""
        link = url.replace(f"traces/{last}", f"sessions/{name}")
        console.show_link("The whole conversation: ", link)


def main() -> None:
    """Chat until /quit, Ctrl-C or the end of input; then show what was stored."""
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
    langfuse.flush()  # send what is waiting before anyone opens the links
    for conversation in conversations:
        if conversation.trace_ids:
            show_conversation(langfuse, conversation)


if __name__ == "__main__":
    main()
