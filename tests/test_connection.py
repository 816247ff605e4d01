"""Each way in which a connection fails is explained with its fix, over real HTTP."""

import importlib
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from conftest import KEYS, Desk, free_port
from langfuse.api import LangfuseAPI

lesson = importlib.import_module("01_langfuse_setup")
TRUST = ssl.create_default_context()  # once: it loads all certificates
Answer = tuple[int, dict[str, str], str]  # status, headers, body
GOOD_HEALTH: Answer = (200, {}, json.dumps({"status": "OK", "version": "4.59.0"}))
HTML: Answer = (200, {"Content-Type": "text/html"}, "<html>Please sign in</html>")


class Client:
    """As much of a Langfuse client as the check uses: the SDK's own API client."""

    def __init__(self, base_url: str) -> None:
        self.http = httpx.Client(trust_env=False, verify=TRUST)
        self.api = LangfuseAPI(
            base_url=base_url, username=KEYS[0], password=KEYS[1], httpx_client=self.http
        )


@contextmanager
def serving(answers: dict[str, Answer]) -> Iterator[str]:
    """Serve fixed answers by the last word of the path, and yield the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = answers[self.path.rsplit("/", 1)[-1]]
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        # It looks whether it shall end only so often: by itself every half second.
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def listening(reply: bytes | None) -> Iterator[str]:
    """Accept connections and send these bytes, or nothing at all."""
    held: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # closed at the end of the test
                return
            held.append(connection)
            if reply is not None:
                connection.recv(1000)
                connection.sendall(reply)
                connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)
    for connection in held:
        connection.close()


def last_check(base_url: str, **more: Any) -> Any:
    client = Client(base_url)
    with client.http:
        return lesson.check_connection(client, base_url, **more)[-1]


FAILING: dict[str, tuple[dict[str, Answer], str, str]] = {  # answers, found, fix
    "a proxy's page": ({"health": HTML}, "not Langfuse", "proxy"),
    "another service": ({"health": (200, {}, '{"up": true}')}, "not Langfuse", "LANGFUSE_BASE_URL"),
    "no such page": ({"health": (404, {}, "{}")}, "not Langfuse", "LANGFUSE_BASE_URL"),
    "plain http to https": (
        {"health": (400, HTML[1], "The plain HTTP request was sent to HTTPS port")},
        "expects https",
        "https://",
    ),
    "a redirect": (
        {"health": (308, {"Location": "https://langfuse.example/api"}, "")},
        "redirects",
        "LANGFUSE_BASE_URL=https://langfuse.example",
    ),
    "an ill server": ({"health": (500, {}, "{}")}, "500", "log"),
    "a database down": ({"health": (503, {}, "{}")}, "503", "log"),
    "an old server": (
        {"health": (200, {}, '{"status": "OK", "version": "3.120.1"}')},
        "3.120.1 is too old",
        "langfuse<5",
    ),
    "wrong keys": (
        {"health": GOOD_HEALTH, "projects": (401, {}, '{"message": "Invalid credentials"}')},
        "refused (401)",
        "Copy both keys",
    ),
    "a page instead of projects": (
        {"health": GOOD_HEALTH, "projects": HTML},
        "no answer (200)",
        "log",
    ),
}


@pytest.mark.parametrize("case", FAILING)
def test_explains_what_answers_wrongly(case: str) -> None:
    answers, found, fix = FAILING[case]
    with serving(answers) as base_url:
        check = last_check(base_url)
    assert found in check.found
    assert fix in check.fix


def test_explains_that_nothing_listens() -> None:
    check = last_check(f"http://127.0.0.1:{free_port()}")
    assert "nothing listens" in check.found
    assert "LANGFUSE_BASE_URL" in check.fix


def test_explains_https_to_a_plain_server() -> None:
    with serving({"health": GOOD_HEALTH}) as base_url:
        check = last_check(base_url.replace("http:", "https:"))
    assert "does not speak https" in check.found
    assert "http://" in check.fix


def test_explains_a_server_that_speaks_no_http() -> None:
    with listening(b"\x15\x03\x01\x00\x02\x02\x46") as base_url:  # a TLS alert
        check = last_check(base_url)
    assert "https" in check.found


def test_gives_up_after_two_seconds() -> None:
    with listening(None) as base_url:
        check = last_check(base_url)
    assert "2 seconds" in check.found


def test_other_regions_are_named_only_on_langfuse_cloud() -> None:
    refusing = {"health": GOOD_HEALTH, "projects": (401, {}, "{}")}
    with serving(refusing) as eu, serving({"health": GOOD_HEALTH}) as us:
        asia = f"http://127.0.0.1:{free_port()}"
        on_cloud = last_check(eu, regions=[eu, us, asia])
        elsewhere = last_check(eu, regions=[us])
    assert f"its LANGFUSE_BASE_URL: {us}." in on_cloud.fix
    assert us not in elsewhere.fix


def test_a_working_connection_names_the_project(desk: Desk) -> None:
    with desk.serving() as client:
        check = last_check(str(client.base_url))
    assert check.fix == ""
    assert "local_langfuse" in check.found
