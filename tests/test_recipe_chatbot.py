"""The chat is driven as people drive it: by lines, by Ctrl-C, with models that fail."""

import inspect
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from conftest import KEYS, TOP, Desk, drawn_trees, promised_trees, stored_observations, stored_trees

import local_langfuse

RECIPE = ("-m", "recipes.chatbot")
PATIENCE = 180  # seconds: to end what hangs, not what a busy machine delays
SHAPE = promised_trees((TOP / "recipes/chatbot.py").read_text())


@dataclass
class Stored:
    """What one run stored, by its sessions."""

    sessions: list[list[dict[str, Any]]]
    scores: list[dict[str, Any]]

    @property
    def turns(self) -> list[dict[str, Any]]:
        return [row for rows in self.sessions for row in rows if row["isRootObservation"]]

    def below(self, turn: dict[str, Any]) -> dict[str, dict[str, Any]]:
        rows = [row for rows in self.sessions for row in rows if not row["isRootObservation"]]
        return {row["name"]: row for row in rows if row["traceId"] == turn["traceId"]}


def stored_by(client: httpx.Client, output: str) -> Stored:
    """Look up the sessions that a run has named at its end."""
    rows = stored_observations(client)
    names = dict.fromkeys(re.findall(r"chat-[0-9a-f-]{36}", output))
    sessions = [[row for row in rows if row["sessionId"] == name] for name in names]
    fields: dict[str, str | int] = {"fields": "details,subject", "limit": 100}
    ids = {row["traceId"] for session in sessions for row in session}
    scores = client.get("/api/public/v3/scores", params=fields).json()["data"]
    return Stored(sessions, [score for score in scores if score["subject"]["id"] in ids])


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, vocabulary: Path
) -> Iterator[tuple[Desk, httpx.Client]]:
    """One desk whose server is running, for all chats of this file."""
    desk = Desk(tmp_path_factory.mktemp("chats"), vocabulary)
    server = local_langfuse.start(desk.db, desk.port)
    with httpx.Client(base_url=server.base_url, auth=KEYS, trust_env=False) as client:
        yield desk, client
    server.stop()


@contextmanager
def chatting(desk: Desk, **env: str) -> Iterator[subprocess.Popen[str]]:
    """Start a chat, and end one that hangs."""
    process = subprocess.Popen(
        [sys.executable, *RECIPE],
        cwd=TOP,
        env=desk.environment(**env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = threading.Timer(PATIENCE, process.kill)
    deadline.start()
    try:
        yield process
    finally:
        deadline.cancel()
        process.kill()
        process.communicate()


# --- A conversation with the offline model -----------------------------------------------

TYPED = """/feedback 5
Can I return shoes after 20 days?
/feedback
/feedback 6 too good
/feedback 4.5
/feedback 5 thank you

   \t
/feedback 2 no, wrong
/order pizza
My name is Ada.
What is my name?
/new
/feedback 4
What is my name?
How can I pay?\x1b[2J
/feedback 3
/new
/quit
never read
"""


@pytest.fixture(scope="module")
def told(served: tuple[Desk, httpx.Client]) -> tuple[str, Stored]:
    desk, client = served
    with chatting(desk) as process:
        output, error = process.communicate(TYPED)
    assert (process.returncode, error) == (0, "")
    return output, stored_by(client, output)


def test_one_trace_a_turn_and_one_session_a_conversation(told: tuple[str, Stored]) -> None:
    _, stored = told
    first, second = ([r["input"] for r in s if r["isRootObservation"]] for s in stored.sessions)
    assert first == ["Can I return shoes after 20 days?", "My name is Ada.", "What is my name?"]
    assert second == ["What is my name?", "How can I pay?\x1b[2J"]
    assert len({turn["traceId"] for turn in stored.turns}) == 5
    assert {turn["parentObservationId"] for turn in stored.turns} == {None}
    for turn in stored.turns:
        reply = stored.below(turn)["write-reply"]
        assert reply["timeToFirstToken"] > 0
        assert reply["usageDetails"]["output"] > 0
        assert reply["costDetails"]["total"] > 0
        assert stored.below(turn)["clean-up-reply"]["output"] == turn["output"]


def test_draws_the_trace_it_promises(
    told: tuple[str, Stored], served: tuple[Desk, httpx.Client]
) -> None:
    output, stored = told
    assert set(stored_trees(served[1])) >= set(SHAPE)
    assert drawn_trees(output)[0] == SHAPE[0]
    assert len(stored.sessions[0]) == 9


def test_remembers_within_a_conversation_and_not_beyond(told: tuple[str, Stored]) -> None:
    known, unknown = (turn["output"] for turn in told[1].turns[2:4])
    assert known == "My name is Ada."
    assert unknown == "The handbook does not say."


def test_a_second_opinion_replaces_the_first(told: tuple[str, Stored]) -> None:
    _, stored = told
    ratings = {score["subject"]["id"]: score for score in stored.scores}
    assert len(ratings) == len(stored.scores) == 2
    first, last = stored.turns[0], stored.turns[-1]
    assert ratings[first["traceId"]]["value"] == 0.25
    assert ratings[first["traceId"]]["comment"] == "no, wrong"
    assert ratings[last["traceId"]]["value"] == 0.5
    assert {score["name"] for score in stored.scores} == {"user-rating"}


def test_commands_explain_themselves(told: tuple[str, Stored]) -> None:
    output = told[0].split("/quit or Ctrl-C.\n", 1)[1].split("Goodbye")[0]
    lines = [line.strip() for line in output.splitlines() if line]
    assert lines[0] == lines[11] == "There is no answer to rate: ask something first."
    assert lines[2] == lines[3] == lines[4]
    assert lines[4].startswith("Write a number from 1 to 5")
    assert lines[5].startswith("Rated 5 of 5")
    assert lines[6].startswith("Rated 2 of 5")
    assert lines[7].startswith("There is no /order. Commands: /feedback 5")
    assert lines[14].startswith("Rated 3 of 5")
    assert lines[15:] == ["A new conversation."]
    assert "never read" not in told[0]


def test_shows_the_last_turn_and_where_to_read_the_rest(
    told: tuple[str, Stored], served: tuple[Desk, httpx.Client]
) -> None:
    output, stored = told
    assert "> " not in output
    assert "\x1b" not in output
    shown = output.split("Goodbye.")[1]
    cost = stored.below(stored.turns[2])["write-reply"]["costDetails"]["total"]
    assert re.search(rf"write-reply .* \${cost:.6f}\n", shown)
    links = re.findall(r"http\S+", shown)
    turns = [stored.turns[2], stored.turns[-1]]
    ends = [[f"traces/{turn['traceId']}", f"sessions/{turn['sessionId']}"] for turn in turns]
    assert ["/".join(link.split("/")[-2:]) for link in links] == ends[0] + ends[1]
    for link in links:
        assert served[1].get(link).status_code == 200


# --- Models that fail, and users who leave -----------------------------------------------


@dataclass
class Model:
    """A server with OpenAI's streaming protocol, which does what it is told, reply by reply.

    A reply is a status to refuse with, or a list of pieces. At the piece None the
    connection breaks, and an empty piece comes again and again until the test has ended: a
    signal that arrives just before Python waits for the next piece is seen at that piece.
    """

    replies: list[list[str | None] | int]
    asked: list[list[dict[str, str]]] = field(default_factory=list)
    url: str = ""
    leave: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serve(model: Model) -> Iterator[Model]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            reply = model.replies[len(model.asked)]
            model.asked.append(body["messages"])
            if isinstance(reply, int):
                key = self.headers["authorization"]
                refusal = json.dumps({"error": {"message": f"No\nwith {key}."}}).encode()
                self.send_response(reply)
                self.send_header("content-length", str(len(refusal)))
                self.end_headers()
                self.wfile.write(refusal)
                return
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for piece in reply:
                if piece is None:
                    self.close_connection = True
                    return
                self.send({"delta": {"content": piece}})
                while not piece and not model.leave.wait(0.1):
                    try:
                        self.send({"delta": {"content": piece}})
                    except OSError:  # nobody listens any more
                        return
            self.send({"delta": {}, "finish_reason": "stop"})
            self.wfile.write(b"0\r\n\r\n")

        def send(self, choice: dict[str, Any]) -> None:
            head = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "mine"}
            event = f"data: {json.dumps({**head, 'choices': [{'index': 0, **choice}]})}\n\n"
            self.wfile.write(f"{len(event):x}\r\n{event}\r\n".encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    model.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield model
    finally:
        model.leave.set()
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_reply_that_is_stopped_ends_before_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    from recipes import chatbot

    begun: list[Generator[str, None, None]] = []

    def reply(*_: object) -> Generator[str, None, None]:
        yield "Half"

    def stop(pieces: Any) -> None:
        begun.append(pieces)  # so that nothing but the turn itself can end it
        next(pieces)
        raise KeyboardInterrupt

    monkeypatch.setattr(chatbot, "stream_reply", reply)
    nothing = {name: lambda **_: None for name in ("update_current_span", "get_current_trace_id")}
    span = SimpleNamespace(**nothing)
    monkeypatch.setattr(chatbot, "get_client", lambda: span)
    nobody: Any = None
    with pytest.raises(KeyboardInterrupt):
        inspect.unwrap(chatbot.answer_turn)(nobody, [{"content": "Hi"}], stop, [])
    assert inspect.getgeneratorstate(begun[0]) == inspect.GEN_CLOSED


def test_a_failed_turn_is_kept_and_the_conversation_goes_on(
    served: tuple[Desk, httpx.Client],
) -> None:
    desk, client = served
    thought: list[str | None] = ["<think>se\n", "cret</think>", " Hello", "\x1b]0;\n\n \n", "Ada "]
    half: list[str | None] = ["Half an ans", None]
    yes: list[str | None] = ["Yes."]
    replies: list[list[str | None] | int] = [thought, 403, half, [], *[yes] * 7]
    typed = "".join(f"turn {number}\n" for number in range(len(replies)))
    typed = typed.replace("turn 1\n", "turn 1\n/feedback 5 there was no answer\n")
    setting = {"OPENAI_API_KEY": "sk-1234567890abcdef"}
    with serve(Model(replies)) as model, chatting(desk, OPENAI_BASE_URL=model.url, **setting) as us:
        assert us.stdin is not None
        assert us.stdout is not None
        us.stdin.write(f"{typed}/last\n")
        us.stdin.flush()
        output = ""
        while "/last" not in output:
            line = us.stdout.readline()
            assert line, output
            output += line
        us.send_signal(signal.SIGINT)  # while it waits for a line
        rest, error = us.communicate()
        output += rest
    assert (us.returncode, error) == (0, "")
    assert "Goodbye." in rest
    failures = re.findall(r"^    No answer: (.*)", output, re.MULTILINE)
    assert "No with Bearer sk-…cdef. Check OPENAI_API_KEY" in failures[0]
    assert "cannot be reached" in failures[1]
    assert failures[2:] == ["The model answered with nothing."]
    assert output.count("There is no answer to rate") == 1
    assert "Rated" not in output
    assert "sk-1234567890abcdef" not in output
    assert "\x1b" not in output

    told = [message["content"] for message in model.asked[4]]
    assert told[1:] == ["turn 0", "Hello\x1b]0;\n\nAda", "turn 4"]
    assert len(model.asked[-1]) == 1 + 2 * 6 + 1
    assert [message["role"] for message in model.asked[-1][:3]] == ["system", "user", "assistant"]

    stored = stored_by(client, output)
    assert len(stored.turns) == len(replies)
    assert [turn["level"] for turn in stored.turns[:5]] == ["DEFAULT", *["ERROR"] * 3, "DEFAULT"]
    answered, refused, broken, empty, *_ = stored.turns
    assert stored.below(refused)["write-reply"]["level"] == "ERROR"
    assert refused["statusMessage"].startswith("Error code: 403")
    assert broken["output"] == "Half an ans"
    assert stored.below(empty)["clean-up-reply"]["level"] == "ERROR"
    assert answered["output"] == "Hello\x1b]0;\n\nAda"
    raw = "".join(piece for piece in thought if piece)
    assert json.loads(stored.below(answered)["clean-up-reply"]["input"])["args"] == [raw]


# A session takes the first terminal it opens for its own, and gets the signals of its keys.
AT_A_TERMINAL = (
    "import os, runpy; os.close(os.open(os.ttyname(0), os.O_RDWR)); "
    "runpy.run_module('recipes.chatbot', run_name='__main__')"
)


def test_at_a_terminal_ctrl_c_stores_the_turn_it_stops(served: tuple[Desk, httpx.Client]) -> None:
    desk, client = served
    keyboard, terminal = pty.openpty()
    seen = ""

    def read_until(text: str) -> None:
        nonlocal seen
        while text not in seen:
            assert select.select([keyboard], [], [], PATIENCE)[0], seen
            seen += os.read(keyboard, 1000).decode()

    with serve(Model([["By card."], ["Unworn ", "soles ", ""]])) as model:
        process = subprocess.Popen(
            [sys.executable, "-c", AT_A_TERMINAL],
            cwd=TOP,
            env=desk.environment(TERM="xterm", COLUMNS="200", OPENAI_BASE_URL=model.url),
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)
        try:
            read_until("> ")
            os.write(keyboard, b"How can I pay?\n")
            read_until("By card.")
            seen = seen.split("By card.")[1]
            read_until("> ")
            os.write(keyboard, b"Can I return shoes?\n")
            read_until("soles ")
            os.write(keyboard, b"\x03")
            read_until("/sessions/chat-")
            read_until("\n")
            assert process.wait(timeout=PATIENCE) == 0
        finally:
            process.kill()
            process.wait()
            os.close(keyboard)
    assert "Goodbye." in seen
    assert "Traceback" not in seen
    paid, turn = stored_by(client, seen).turns
    assert paid["level"] == "DEFAULT"
    assert (turn["level"], turn["statusMessage"]) == ("WARNING", "stopped by the user")
    assert turn["output"] == "Unworn soles "
    reply = stored_by(client, seen).below(turn)["write-reply"]
    assert "Unworn soles" in reply["output"]
    assert reply["endTime"] <= turn["endTime"]
