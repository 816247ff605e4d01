"""Chat in the terminal, and keep every conversation.

A chat that went wrong is hard to repeat: nobody remembers what was said before. One trace
a turn, all under one session, keeps it, with the wait for the first word, what it cost,
and what the user thought of it.

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

import io
import re
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

import openai
from langfuse import Langfuse, get_client, observe, propagate_attributes
from langfuse.api import ObservationV2
from langfuse.openai import OpenAI

from common import console
from common.client import connect
from common.llm import explain_failure, model_name, openai_client
from common.readback import FIELDS, NotStoredError, poll, sent_count, trace_link
from common.retriever import handbook

with suppress(ImportError):  # arrow keys and history at the prompt; Windows has its own
    import readline  # noqa: F401

INSTRUCTION = (
    "You are the assistant of a small shoe shop. Answer in at most two sentences, from what "
    "the customer said and the passages below. If they do not answer the question, say "
    '"The handbook does not say."\n'
)
REMEMBERED_TURNS = 6  # what the model is told again; a longer memory costs more each turn
SHOWN_TURNS = 10  # of each conversation, at the end
HELP = "Commands: /feedback 5 what you think of the last answer (1 to 5), /new, /quit."
FAILURES = (openai.OpenAIError, ValueError)
Show = Callable[[Iterable[str]], None]


# %% 1. Answer a turn, word by word
#
# The user reads along, so the wait that counts is that for the first word. A stream can
# break or be stopped at any word: what was written until then is kept all the same.


def stream_reply(
    client: OpenAI, messages: list[dict[str, Any]], written: list[str]
) -> Generator[str, None, None]:
    """Yield the reply piece by piece, and add each piece to `written`.

    In Langfuse: select `write-reply` and compare the time to first token with the latency.
    """
    with client.chat.completions.create(
        name="write-reply",
        model=model_name(),
        messages=messages,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                written.append(chunk.choices[0].delta.content)
                yield written[-1]


@observe(name="answer-turn", as_type="chain", capture_input=False, capture_output=False)
def answer_turn(client: OpenAI, messages: list[dict[str, Any]], show: Show) -> str:
    """Let the reply be shown while it is written, and return it cleaned up.

    In Langfuse: filter by level. ERROR is a model that failed, WARNING a user who did not
    want to read to the end.
    """
    langfuse, written = get_client(), list[str]()
    langfuse.update_current_span(input=messages[-1]["content"])
    try:
        with closing(stream_reply(client, messages, written)) as pieces:
            show(pieces)
        reply = clean_up_reply("".join(written))
    except KeyboardInterrupt:
        langfuse.update_current_span(level="WARNING", status_message="stopped by the user")
        raise
    finally:
        langfuse.update_current_span(output="".join(written))
    langfuse.update_current_span(output=reply)
    return reply


# %% 2. Clean up what is kept
#
# What stays is sent again with each further turn, and paid for again. Models that reason
# may write their thoughts into the reply, and some write nothing at all.

THOUGHTS = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
NOT_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


@observe(name="clean-up-reply", capture_input=False)
def clean_up_reply(reply: str) -> str:
    """Return a reply without thoughts, control characters and blank lines in a row.

    Raises ValueError where nothing is left: that is not an answer.

    In Langfuse: select `clean-up-reply`, and see what a user saw and later turns did not.
    """
    get_client().update_current_span(input=reply)
    text = NOT_TEXT.sub("", THOUGHTS.sub("", reply))
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

    session_id: str
    trace_ids: list[str] = field(default_factory=list)
    rated: set[str] = field(default_factory=set)
    memory: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=REMEMBERED_TURNS))


def start_conversation(langfuse: Langfuse) -> Conversation:
    """Return a conversation of its own, without turns."""
    return Conversation(f"chat-{langfuse.create_trace_id()[:12]}")


def take_turn(client: OpenAI, conversation: Conversation, text: str, show: Show) -> str:
    """Answer what the user typed; return in one line what failed, or an empty text.

    In Langfuse: open Sessions and select the session, and you read the conversation.
    """
    messages = [{"role": "system", "content": INSTRUCTION + "\n".join(handbook())}]
    for said, replied in conversation.memory:
        messages.append({"role": "user", "content": said})
        messages.append({"role": "assistant", "content": replied})
    messages.append({"role": "user", "content": text})
    trace_id = get_client().create_trace_id()
    conversation.trace_ids.append(trace_id)
    with propagate_attributes(session_id=conversation.session_id, tags=["channel:terminal"]):
        try:
            reply = answer_turn(client, messages, show, langfuse_trace_id=trace_id)
        except FAILURES as error:
            return explain_failure(error)
    conversation.memory.append((text, reply))
    return ""


# %% 4. Let the user say how it was
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
    name = name.lower()
    if name == "/new":
        conversations.append(start_conversation(langfuse))
        return "A new conversation."
    if name != "/feedback":
        return HELP if name == "/help" else f"There is no {name}. {HELP}"
    rated = re.fullmatch(r"\s*([1-5])(?:\s+(.*))?", rest)
    if not rated:
        return "Write a number from 1 to 5, and a comment if you like: /feedback 5 that was it"
    if not conversations[-1].trace_ids:
        return "There is no answer yet in this conversation."
    trace_id = conversations[-1].trace_ids[-1]
    if not sent_count(trace_id):
        return "Not stored: tracing is off, or LANGFUSE_SAMPLE_RATE left this turn out."
    rate_turn(langfuse, trace_id, int(rated[1]), rated[2] or "")
    conversations[-1].rated.add(trace_id)
    return f"Rated {rated[1]} of 5. Another /feedback replaces it."


# %% 5. Read the conversation back
#
# What a colleague will find tomorrow is not what was on the screen, but what is stored.


def read_session(langfuse: Langfuse, conversation: Conversation) -> list[ObservationV2]:
    """Return the newest 1,000 observations of a session, oldest first.

    Raises NotStoredError where some of them have not arrived within 30 s.
    """
    sent = min(1000, sum(map(sent_count, conversation.trace_ids)))
    asked = {"session_id": conversation.session_id, "fields": FIELDS, "limit": 1000}
    rows: list[ObservationV2] = poll(
        lambda: langfuse.api.observations.get_many(**asked).data,
        until=lambda found: len(found) >= sent,
    )
    if len(rows) < sent:
        raise NotStoredError(f"Only {len(rows)} of {sent} observations can be read back.")
    return sorted(rows, key=lambda row: row.start_time)


def read_ratings(langfuse: Langfuse, conversation: Conversation) -> dict[str, str]:
    """Return the stored ratings, from 0 to 1, of the last turns, by trace and with comment."""
    rated = [one for one in conversation.trace_ids[-SHOWN_TURNS:] if one in conversation.rated]
    asked = {"name": "user-rating", "trace_id": ",".join(rated), "fields": "details,subject"}
    scores = poll(
        lambda: langfuse.api.scores.get_many(**asked).data if rated else [],
        until=lambda found: len(found) >= len(rated),
    )
    return {score.subject.id: f"{score.value:.2f} {score.comment or ''}" for score in scores}


def turn_rows(observations: list[ObservationV2], ratings: dict[str, str]) -> list[tuple[str, ...]]:
    """Return for each turn: question, answer, wait for the first word, cost and rating.

    In Langfuse: the same stands in the session, turn below turn.
    """
    called = {row.trace_id: row for row in observations if row.type == "GENERATION"}
    rows: list[tuple[str, ...]] = []
    for root in (row for row in observations if row.is_root_observation):
        call = called.get(root.trace_id)
        trouble = f"({root.level}: {root.status_message})" if root.status_message else ""
        waited = call.time_to_first_token if call else None
        rows.append(
            (
                str(root.input),
                f"{root.output or ''} {trouble}".strip(),
                f"{waited * 1000:.0f} ms" if waited else "",
                console.cost_text(call) if call else "",
                ratings.get(str(root.trace_id), ""),
            )
        )
    return rows


def show_conversation(langfuse: Langfuse, conversation: Conversation) -> None:
    """Print the last turns of a conversation as they are stored, and its link."""
    observations = read_session(langfuse, conversation)
    rows = turn_rows(observations, read_ratings(langfuse, conversation))
    name, last = conversation.session_id, str(observations[-1].trace_id)
    link = trace_link(langfuse, last)
    console.show_section(f"The last turns of {name}, as stored")
    console.show_table(("asked", "answered", "first word", "cost", "rating"), rows[-SHOWN_TURNS:])
    console.show_result("last turn", link)
    console.show_result("conversation", link.replace(f"traces/{last}", f"sessions/{name}"))


def typed_lines() -> Iterator[str]:
    """Yield what is typed, line by line, until the end of input; prompt at a terminal only."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    prompt = "> " if sys.stdin.isatty() else ""
    with suppress(EOFError):
        while (line := input(prompt).strip()).lower() != "/quit":
            yield line


def main() -> None:
    """Chat until /quit, the end of input or Ctrl-C; then show what was stored."""
    langfuse = connect()
    client, conversations = openai_client(), [start_conversation(langfuse)]
    console.show_line(HELP)
    try:
        for line in typed_lines():
            if line.startswith("/"):
                console.show_line(f"    {run_command(langfuse, conversations, line)}")
            elif line and (
                failure := take_turn(client, conversations[-1], line, console.show_pieces)
            ):
                console.show_line(f"    No answer: {failure}", "red")
    except KeyboardInterrupt:
        console.show_line("")  # the terminal has written ^C
    console.show_line("Goodbye.")
    langfuse.flush()  # hand over what is waiting before anyone opens the link
    stored = [each for each in conversations if any(map(sent_count, each.trace_ids))]
    for conversation in stored:
        show_conversation(langfuse, conversation)
    if not stored:
        console.show_line("  Nothing is stored: no turn, tracing is off, or sampling left it out.")


if __name__ == "__main__":
    main()
