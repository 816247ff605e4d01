"""After `connect()` every library finds its service in the environment, and nothing of ours is
in between: in one process, in its children, and where something else is in the way."""

import os
import pty
import re
import select
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from conftest import TOP, Desk, free_port, stored_observations
from requests.utils import get_environ_proxies

import local_langfuse
import local_model

SYNC = """
    from langfuse.openai import OpenAI
    @observe()
    def ask(question):
        message = {"role": "user", "content": question}
        response = OpenAI().chat.completions.create(
            model=os.environ["OPENAI_MODEL"], messages=[message], max_completion_tokens=300)
        return response.choices[0].message.content
    print(ask("Boots are warm. Are boots warm?"))
"""
ASYNC = """
    import asyncio
    from langfuse.openai import AsyncOpenAI
    @observe()
    async def ask(question):
        response = await AsyncOpenAI().responses.create(
            model=os.environ["OPENAI_MODEL"], input=question)
        return response.output_text
    print(asyncio.run(ask("Boots are warm. Are boots warm?")))
"""
STREAM = """
    from langfuse.openai import OpenAI
    @observe()
    def ask(question):
        events = OpenAI().responses.create(
            model=os.environ["OPENAI_MODEL"], input=question, stream=True)
        return "".join(e.delta for e in events if e.type == "response.output_text.delta")
    print(ask("Boots are warm. Are boots warm?"))
"""
LANGCHAIN = """
    from langchain_openai import ChatOpenAI
    from langfuse.langchain import CallbackHandler
    model = ChatOpenAI(model=os.environ["OPENAI_MODEL"])
    asked = "Boots are warm. Are boots warm?"
    print(model.invoke(asked, {"callbacks": [CallbackHandler()]}).content)
"""
HEAD = """
    import os
    from common.client import connect
    connect()
    from langfuse import Langfuse, get_client, observe
    langfuse = Langfuse()
"""
TAIL = """
    langfuse.flush()
    from common.console import show_trace
    show_trace()
"""


def code(*parts: str) -> tuple[str, str]:
    return "-c", "\n".join(map(textwrap.dedent, parts))


BODIES = {"sync": SYNC, "async": ASYNC, "stream": STREAM, "LangChain": LANGCHAIN}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_clients_need_no_argument(body: str, desk: Desk) -> None:
    ran = desk.run(*code(HEAD, body, TAIL))
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "Boots are warm." in ran.stdout
    assert len(re.findall(r" generation +gpt-6-luna .* \$0\.0000", ran.stdout)) == 1
    assert f"http://127.0.0.1:{desk.port}/project/local/traces/" in ran.stdout


def test_a_second_call_is_harmless(desk: Desk) -> None:
    body = """
        connect()
        before = dict(os.environ)
        connect()
        assert before == dict(os.environ)
        with langfuse.start_as_current_observation(name="a"):
            langfuse.start_observation(name="b").end()
        from common.readback import last_trace_id, sent_count
        langfuse.flush()
        print(sent_count(last_trace_id()), "sent")
    """
    ran = desk.run(*code(HEAD, body, TAIL))
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "2 sent" in ran.stdout
    assert ran.stdout.count("no Langfuse keys are set") == 3


def test_it_creates_no_client_and_wraps_nothing(desk: Desk) -> None:
    body = """
        import sys
        from common.client import connect
        connect()
        from langfuse._client.resource_manager import LangfuseResourceManager as manager
        from opentelemetry import trace
        print("langfuse.openai" in sys.modules, dict(manager._instances),
              type(trace.get_tracer_provider()).__name__)
    """
    ran = desk.run(*code(body))
    assert ran.stdout.splitlines()[-1] == "False {} ProxyTracerProvider"


@pytest.mark.parametrize(("rate", "stored"), [("0", 0), ("1", 1)])
def test_the_first_client_decides_what_is_sent(rate: str, stored: int, desk: Desk) -> None:
    body = """
        import os
        from common.client import connect
        connect()
        from langfuse import Langfuse
        langfuse = Langfuse(mask=lambda data, **_: "masked")
        langfuse.start_observation(name="a", input="secret").end()
        langfuse.flush()
    """
    ran = desk.run(*code(body), LANGFUSE_SAMPLE_RATE=rate)
    assert (ran.returncode, ran.stderr) == (0, "")
    with desk.serving() as client:
        rows = stored_observations(client)
    assert [row["input"] for row in rows] == ["masked"] * stored


# --- Children ----------------------------------------------------------------------------

CHILD = ("-c", "\n".join(map(textwrap.dedent, (HEAD, SYNC, TAIL))))


def test_a_child_process_joins_its_parent(desk: Desk) -> None:
    body = f"""
        import subprocess, sys
        print(os.environ["LANGFUSE_BASE_URL"], os.environ["OPENAI_BASE_URL"])
        child = {CHILD!r}
        ran = subprocess.run([sys.executable, *child], capture_output=True, text=True)
        print(ran.stdout, ran.stderr, ran.returncode)
    """
    ran = desk.run(*code(HEAD, body))
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "both keys" not in ran.stdout
    assert ran.stdout.count("Answers come from the local model, priced as gpt-6-luna") == 2
    assert f"stand-in at http://127.0.0.1:{desk.port}, in the file" in ran.stdout
    assert "Boots are warm." in ran.stdout
    assert "└─ OpenAI-generation" in ran.stdout
    assert ran.stdout.split()[-1] == "0"


def test_a_child_of_a_parent_that_is_gone_starts_its_own(desk: Desk) -> None:
    ran = desk.run(*code(HEAD, "print(os.environ['SET_BY_CONNECT'])"))
    mark = ran.stdout.splitlines()[-1]
    put = dict(re.findall(r'"([A-Z_]+)": "([^"]*)"', mark))
    assert put.keys() >= {"LANGFUSE_SECRET_KEY", "OPENAI_BASE_URL", "LANGFUSE_RELEASE"}
    again = desk.run(*CHILD, SET_BY_CONNECT=mark, **put)
    assert (again.returncode, again.stderr) == (0, "")
    assert "Traces go to a local Langfuse stand-in" in again.stdout
    assert "no Langfuse keys are set" in again.stdout
    assert "└─ OpenAI-generation" in again.stdout


def test_what_a_user_sets_wins_over_what_a_parent_set(desk: Desk) -> None:
    ran = desk.run(*code(HEAD, "print(os.environ['SET_BY_CONNECT'])"))
    mark = ran.stdout.splitlines()[-1]
    put = dict(re.findall(r'"([A-Z_]+)": "([^"]*)"', mark))
    again = desk.run(
        *code(HEAD, "print(os.environ['OPENAI_MODEL'], os.environ['OPENAI_API_KEY'])"),
        SET_BY_CONNECT=mark,
        **put | {"OPENAI_MODEL": "gpt-6-sol", "OPENAI_API_KEY": "sk-mine-0123456789"},
    )
    assert "Answers come from gpt-6-sol, at https://api.openai.com/v1." in again.stdout
    assert again.stdout.splitlines()[-1] == "gpt-6-sol sk-mine-0123456789"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_both_sides_of_a_fork_are_traced(desk: Desk) -> None:
    body = """
        ask("Hats are cold. Are hats cold?")
        pid = os.fork()
        print(ask("Hats are soft. Are hats soft?"), "child" if pid == 0 else "parent", flush=True)
        langfuse.flush()
        if pid == 0:
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    """
    ran = desk.run(*code(HEAD, SYNC, body, TAIL), PYTHONWARNINGS="ignore")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert {"child", "parent"} <= set(ran.stdout.split())
    with desk.serving() as client:
        roots = [row for row in stored_observations(client) if row["isRootObservation"]]
    assert sorted(row["output"] for row in roots) == [
        *("Boots are warm.", "Hats are cold.", "Hats are soft.", "Hats are soft.")
    ]


# --- Ports -------------------------------------------------------------------------------


@contextmanager
def somebody_else(port: int) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield
        server.shutdown()


def test_a_port_of_another_program_is_left_alone(desk: Desk) -> None:
    with somebody_else(desk.port):
        ran = desk.run(*CHILD)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert f"Port {desk.port} is in use by another program" in ran.stdout
    own = re.search(r"http://127.0.0.1:(\d+)/project", ran.stdout)
    assert own
    assert own[1] != str(desk.port)
    assert f"-m local_langfuse --port {own[1]} --db {desk.db}`" in ran.stdout


@pytest.mark.parametrize("lasts", [True, False])
def test_a_stand_in_with_another_file_is_named_and_left_alone(lasts: bool, desk: Desk) -> None:
    other = desk.folder / "other.db"
    server = local_langfuse.start(other, desk.port, lasts=lasts)
    ran = desk.run(*CHILD)
    server.stop()
    assert (ran.returncode, ran.stderr) == (0, "")
    assert f"Port {desk.port} is in use by a local Langfuse with the file {other}" in ran.stdout
    assert "└─ OpenAI-generation" in ran.stdout
    with desk.serving() as client:
        assert len(stored_observations(client)) == 2


@pytest.mark.parametrize("lasts", [True, False])
def test_only_a_stand_in_that_lasts_is_joined(lasts: bool, desk: Desk) -> None:
    server = local_langfuse.start(desk.db, desk.port, lasts=lasts)
    ran = desk.run(*CHILD)
    server.stop()
    assert (ran.returncode, ran.stderr) == (0, "")
    assert (f"at http://127.0.0.1:{desk.port}, in the file" in ran.stdout) is lasts
    assert (f"Port {desk.port} is in use by" in ran.stdout) is not lasts


def test_a_local_model_that_was_named_is_labelled(desk: Desk) -> None:
    model = local_model.start()
    ran = desk.run(*CHILD, OPENAI_BASE_URL=model.base_url)
    model.stop()
    assert "Answers come from the local model, priced as gpt-6-luna (" in ran.stdout
    assert f"), at {model.base_url}." in ran.stdout
    assert "Boots are warm." in ran.stdout


# --- In a terminal -----------------------------------------------------------------------


def read_until(terminal: int, text: str) -> str:
    """Read what a program writes to its terminal until a text is there, or it ends."""
    said = ""
    while text not in said:
        ready, _, _ = select.select([terminal], [], [], 60)
        assert ready, said
        try:
            chunk = os.read(terminal, 4096)
        except OSError:  # the other side is closed: the program has ended
            return said
        said += chunk.decode()
    return said


@contextmanager
def in_terminal(
    desk: Desk, *command: str, **env: str
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=TOP,
        env=desk.environment(TERM="xterm", **env),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    with closing(os.fdopen(ours, "rb", buffering=0)):
        yield ours, process
    process.wait(60)


def test_links_are_live_in_a_terminal_until_enter_is_pressed(desk: Desk) -> None:
    with in_terminal(desk, *CHILD) as (terminal, process):
        said = read_until(terminal, "until you press Enter.")
        there = local_langfuse.running(desk.port)
        assert there == local_langfuse.Running(str(desk.db.resolve()), lasts=False)
        assert process.poll() is None
        os.write(terminal, b"\n")
        read_until(terminal, "never said")
        assert process.wait(60) == 0
    assert said.index("/project/local/traces/") < said.index("The links above are live")
    assert local_langfuse.running(desk.port) is None


@pytest.mark.parametrize("why", ["in CI", "it was running", "no link was shown"])
def test_a_program_ends_at_once_where_nothing_would_be_lost(why: str, desk: Desk) -> None:
    server = local_langfuse.start(desk.db, desk.port) if why == "it was running" else None
    command = code(HEAD) if why == "no link was shown" else CHILD
    env = {"CI": "true"} if why == "in CI" else {}
    with in_terminal(desk, *command, **env) as (terminal, process):
        said = read_until(terminal, "until you press Enter.")
        assert process.wait(60) == 0
    assert "press Enter" not in said
    if server:
        server.stop()


# --- Proxies and models ------------------------------------------------------------------

PROXIES = [
    "ALL_PROXY=socks5://ada:secret@127.0.0.1:9",
    "HTTP_PROXY=ftp://x",
    "https_proxy=http://[::1",
]


@pytest.mark.parametrize("setting", PROXIES)
def test_a_proxy_that_cannot_be_used_is_one_line(setting: str, desk: Desk) -> None:
    name, _, url = setting.partition("=")
    ran = desk.run(*CHILD, **{name: url})
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.count("\n") == 1, ran.stderr
    assert ran.stderr.startswith(name.upper())
    assert "pip install socksio pysocks" in ran.stderr
    assert "secret" not in ran.stderr


def test_a_proxy_is_not_asked_for_a_model_on_this_machine(desk: Desk) -> None:
    with desk.serving() as langfuse:
        ran = desk.run(
            *CHILD,
            HTTP_PROXY=f"http://127.0.0.1:{free_port()}",
            LANGFUSE_PUBLIC_KEY="pk-lf-local",
            LANGFUSE_SECRET_KEY="sk-lf-local",
            LANGFUSE_BASE_URL=str(langfuse.base_url),
        )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "because both keys are set" in ran.stdout
    assert "Boots are warm." in ran.stdout


NOT_PROXIED = [
    ({}, "127.0.0.1,localhost"),
    ({"NO_PROXY": "intranet"}, "intranet,127.0.0.1,localhost"),
    ({"NO_PROXY": "never-read", "no_proxy": "intranet"}, "intranet,127.0.0.1,localhost"),
    ({"NO_PROXY": "*"}, "*"),
]


@pytest.mark.parametrize(("given", "hosts"), NOT_PROXIED)
def test_every_library_keeps_the_proxy_out_of_the_same_hosts(
    given: dict[str, str], hosts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, given.get(name, ""))
    for _ in range(2):  # a child process does it again
        local_langfuse.reach_directly()
        assert (os.environ["NO_PROXY"], os.environ["no_proxy"]) == (hosts, hosts)
    assert not get_environ_proxies("http://127.0.0.1:4747")


@pytest.mark.parametrize("file", ["/no/such.pem", __file__])
def test_a_file_without_certificates_is_one_line(file: str, desk: Desk) -> None:
    start = "from common.client import connect; connect()"
    clients = "from langfuse import Langfuse; Langfuse()", "import openai; openai.OpenAI()"
    for client in clients:
        ran = desk.run(*code(start, client), SSL_CERT_FILE=file)
        assert ran.returncode == 1
        assert ran.stderr.startswith("SSL_CERT_FILE names no file with certificates: ")
        assert ran.stderr.count("\n") == 1
    other = desk.run(*code(start, "open('missing')"), SSL_CERT_FILE=file)
    assert "No such file or directory: 'missing'" in other.stderr


def test_a_model_that_will_be_shut_down_is_named_once(desk: Desk) -> None:
    body = "import os; from common.client import connect; connect()"
    said = desk.run("-c", body, OPENAI_MODEL="gpt-4o-mini-2024-07-18").stdout
    assert said.count("shut down on 2027-01-14; its successor is gpt-6-luna.") == 1
    assert "shut down" not in desk.run("-c", body).stdout
