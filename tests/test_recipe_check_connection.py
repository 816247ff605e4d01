"""Each way in which a connection fails is explained with its one fix, over real HTTP."""

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import KEYS, TOP, Desk, free_port, stored_observations
from langfuse.api import LangfuseAPI

from recipes.check_connection import check_connection, shown

REFUSING = str(Path(__file__).parent / "refuse_sockets")
RECIPE = "recipes.check_connection"
TRUST = ssl.create_default_context()  # once: it loads all certificates
Answer = tuple[int, dict[str, str], str]  # status, headers, body
GOOD_HEALTH: Answer = (200, {}, json.dumps({"status": "OK", "version": "4.59.0"}))
PROJECTS: Answer = (
    200,
    {},
    json.dumps(
        {
            "data": [
                {
                    "id": "p",
                    "name": "shop",
                    "organization": {"id": "o", "name": "o"},
                    "metadata": {},
                }
            ]
        }
    ),
)
NOTHING: Answer = (200, {}, json.dumps({"data": [], "meta": {}}))
HTML: Answer = (200, {"Content-Type": "text/html"}, "<html>Please sign in</html>")


class Client:
    """As much of a Langfuse client as the check uses: the SDK's own API client."""

    def __init__(self, base_url: str) -> None:
        self.http = httpx.Client(trust_env=False, verify=TRUST)
        self.api = LangfuseAPI(
            base_url=base_url, username=KEYS[0], password=KEYS[1], httpx_client=self.http
        )


@contextmanager
def serving(answers: dict[str, Answer], host: str = "127.0.0.1") -> Iterator[str]:
    """Serve fixed answers by the last word of the path, and yield the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers["content-length"] or 0))
            path = self.path.partition("?")[0]
            status, headers, body = answers[path.rpartition("/")[2]]
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_GET  # noqa: N815  http.server's own name

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer((host, 0), Handler) as server:
        # It looks whether it shall end only so often: by itself every half second.
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://{host}:{server.server_port}"
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
        return list(check_connection(client, base_url, **more))[-1]  # type: ignore[arg-type]


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


# %% As a reader runs it


def run(desk: Desk, base_url: str, **env: str) -> subprocess.CompletedProcess[str]:
    keys = {"LANGFUSE_PUBLIC_KEY": KEYS[0], "LANGFUSE_SECRET_KEY": KEYS[1]}
    return desk.run("-m", RECIPE, **{**keys, "LANGFUSE_BASE_URL": base_url, **env})


def test_all_is_well_with_nothing_and_twice_on_one_database(desk: Desk) -> None:
    for times in (1, 2):
        ran = desk.run("-m", RECIPE)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert re.search(r"^  span +sent, and read back [\d.]+ s later$", ran.stdout, re.MULTILINE)
        assert re.search(r"^  LANGFUSE_PUBLIC_KEY +not set +default", ran.stdout, re.MULTILINE)
        with desk.serving() as client:
            stored = stored_observations(client)
            names = [(row["name"], row["type"], row["isRootObservation"]) for row in stored]
            assert names == [("check-connection", "SPAN", True)] * times
            assert stored[-1]["traceId"] in ran.stdout


def test_the_table_says_where_a_value_comes_from_and_keeps_secrets(desk: Desk) -> None:
    env_file = desk.folder / ".env"
    env_file.write_text("LANGFUSE_TIMEOUT=7\nLANGFUSE_PUBLIC_KEY=pk-lf-of-the-file-1234\n")
    code = (
        "import pathlib, sys; from common import settings; "
        f"settings.read_settings(pathlib.Path({str(env_file)!r})); "
        "read = settings.read_settings; "
        f"settings.read_settings = lambda: read(pathlib.Path({str(env_file)!r})); "
        "from recipes.check_connection import current_settings; "
        "[print(*row) for row in current_settings()]"
    )
    given = {
        "LANGFUSE_PUBLIC_KEY": "pk-lf-of-the-shell-9876",
        "OPENAI_API_KEY": "sk-1234567890abcdef",
        "OPENAI_BASE_URL": "http://ada:s3cret@127.0.0.1/v1",
        "LANGFUSE_RELEASE": "sk-lf-pasted-here-by-mistake",
        "https_proxy": "http://bob:s3cret@proxy:3128",
    }
    ran = desk.run("-c", code, PYTHON_DOTENV_DISABLED="0", **given)
    assert ran.stdout.splitlines() == [
        "LANGFUSE_PUBLIC_KEY pk-lf-…9876 environment",
        "LANGFUSE_SECRET_KEY not set default",
        "LANGFUSE_TRACING_ENABLED true default",
        "LANGFUSE_RELEASE sk-lf-…take environment",
        "LANGFUSE_TIMEOUT 7 .env",
        f"LOCAL_LANGFUSE_PORT {desk.port} environment",
        f"LOCAL_LANGFUSE_DB {desk.db} environment",
        "OPENAI_API_KEY sk-…cdef environment",
        "OPENAI_BASE_URL http://…@127.0.0.1/v1 environment",
        "HTTPS_PROXY http://…@proxy:3128 environment",
    ]


def test_a_password_is_hidden_with_and_without_a_scheme() -> None:
    assert shown("HTTPS_PROXY", "ada:s3cret@proxy:3128") == "…@proxy:3128"
    assert shown("HTTPS_PROXY", "http://proxy:3128/a@b") == "http://proxy:3128/a@b"


def test_wrong_keys_end_with_the_fix_as_the_only_line_on_stderr(desk: Desk) -> None:
    with desk.serving() as client:
        ran = run(desk, str(client.base_url), LANGFUSE_SECRET_KEY="sk-lf-not-this-one")
    assert ran.returncode == 1
    assert ran.stderr == "Copy both keys again from the project's settings, API Keys.\n"
    assert "keys                 FAILED  refused (401)" in ran.stdout
    assert "not-this-one" not in ran.stdout


def test_a_setting_that_cannot_be_used_is_refused_below_the_table(desk: Desk) -> None:
    ran = desk.run("-m", RECIPE, LANGFUSE_PUBLIC_KEY="pk-lf-alone")
    assert ran.returncode == 2
    assert ran.stderr.startswith("LANGFUSE_SECRET_KEY is missing")
    assert re.search(r"LANGFUSE_SECRET_KEY +not set +default", ran.stdout)


def test_with_tracing_off_nothing_is_asked(desk: Desk) -> None:
    refused = desk.folder / "refused"
    off = {"LANGFUSE_TRACING_ENABLED": "false", "PYTHONPATH": REFUSING}
    off |= {"REFUSE_SOCKETS": "all", "REFUSED_SOCKETS_FILE": str(refused)}
    ran = run(desk, f"http://127.0.0.1:{desk.port}", **off)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "Tracing is off" in ran.stdout
    assert not refused.exists()


UNRECORDED = {
    "LANGFUSE_SAMPLE_RATE": ("0", "Unset LANGFUSE_SAMPLE_RATE, or set it above 0.\n"),
    "OTEL_SDK_DISABLED": ("true", "Unset OTEL_SDK_DISABLED.\n"),
    "OTEL_TRACES_SAMPLER": ("always_off", "Unset OTEL_TRACES_SAMPLER.\n"),
    "SSL_CERT_FILE": ("/no/such.pem", "Correct the path in SSL_CERT_FILE: no certificates there"),
}


@pytest.mark.parametrize("name", UNRECORDED)
def test_a_variable_that_stops_everything_is_named(desk: Desk, name: str) -> None:
    value, fix = UNRECORDED[name]
    ran = desk.run("-m", RECIPE, **{name: value})
    assert ran.returncode == 1
    assert ran.stderr.startswith(fix)
    assert ran.stderr.count("\n") == 1


def test_a_sampled_setup_still_sends_the_one_span(desk: Desk) -> None:
    ran = desk.run("-m", RECIPE, LANGFUSE_SAMPLE_RATE="0.000001")
    assert (ran.returncode, ran.stderr) == (0, "")


# %% Certificates


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CA of our own, and what it signed: a server's certificate and its key."""
    if not shutil.which("openssl") and not os.environ.get("CI"):
        pytest.skip("needs the `openssl` command")
    folder = tmp_path_factory.mktemp("certificates")
    ca, ca_key = str(folder / "ca.pem"), str(folder / "ca.key")
    new = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    signs = ("-addext", "keyUsage=critical,keyCertSign")
    openssl(*new, "-subj", "/CN=Our CA", *signs, "-out", ca, "-keyout", ca_key)
    for name, host in (("server", "IP:127.0.0.1"), ("other", "DNS:other.example")):
        files = ("-out", str(folder / f"{name}.pem"), "-keyout", str(folder / f"{name}.key"))
        limits = ("-addext", "basicConstraints=critical,CA:FALSE")
        named = ("-subj", f"/CN={name}", "-addext", f"subjectAltName={host}")
        openssl(*new, "-CA", ca, "-CAkey", ca_key, *limits, *named, *files)
    return folder


@contextmanager
def with_tls(port: int, certificates: Path, name: str = "server") -> Iterator[str]:
    """Speak HTTPS with this certificate in front of a server, and yield the address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")

    def copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def serve(raw: socket.socket) -> None:
        with (
            suppress(OSError),  # a client that does not trust the certificate hangs up
            context.wrap_socket(raw, server_side=True) as secure,
            socket.create_connection(("127.0.0.1", port)) as plain,
        ):
            answering = pool.submit(copy, plain, secure)
            copy(secure, plain)
            answering.result()

    def accept() -> None:
        with suppress(OSError):  # closed at the end of the test
            while True:
                pool.submit(serve, listener.accept()[0])

    with ThreadPoolExecutor() as pool, socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=accept)
        accepting.start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()


def test_a_ca_of_your_own_must_be_in_both_variables(desk: Desk, certificates: Path) -> None:
    ca = str(certificates / "ca.pem")
    with desk.serving() as client, with_tls(desk.port, certificates) as base_url:
        neither = run(desk, base_url)
        only_spans = run(desk, base_url, REQUESTS_CA_BUNDLE=ca)
        only_api = run(desk, base_url, SSL_CERT_FILE=ca)
        assert stored_observations(client) == []
        both = run(desk, base_url, SSL_CERT_FILE=ca, REQUESTS_CA_BUNDLE=ca)
        assert [row["name"] for row in stored_observations(client)] == ["check-connection"]
    for ran in (neither, only_spans):
        assert ran.returncode == 1
        assert "address              FAILED  " in ran.stdout
        assert "its certificate is not trusted" in ran.stdout
        assert ran.stderr.startswith("Set SSL_CERT_FILE and REQUESTS_CA_BUNDLE, both, to a file")
    assert only_api.returncode == 1
    assert "keys                 accepted" in only_api.stdout, "all other checks pass"
    assert "span                 FAILED  not sent: `requests`" in only_api.stdout
    assert only_api.stderr.startswith(f"Set REQUESTS_CA_BUNDLE={ca}, too: ")
    assert (both.returncode, both.stderr) == (0, "")
    for ran in (neither, only_spans, only_api):
        assert ran.stderr.count("\n") == 1


def test_a_certificate_that_no_ca_can_cure_is_told_apart(desk: Desk, certificates: Path) -> None:
    ca = str(certificates / "ca.pem")
    with desk.serving(), with_tls(desk.port, certificates, "other") as base_url:
        ran = run(desk, base_url, SSL_CERT_FILE=ca, REQUESTS_CA_BUNDLE=ca)
    assert (ran.returncode, "for another host" in ran.stdout) == (1, True)
    assert ran.stderr.startswith("Write the host in LANGFUSE_BASE_URL as")


# %% The span's own way


ONLY_SPANS: dict[str, tuple[dict[str, str], str]] = {
    "REQUESTS_CA_BUNDLE": ({"REQUESTS_CA_BUNDLE": "/no/such.pem"}, "Correct the path in REQUESTS_"),
    "netrc": ({}, "Remove 127.0.0.1 from ~/.netrc.\n"),
}


@pytest.mark.parametrize("case", ONLY_SPANS)
def test_what_only_the_exporter_reads_is_named(desk: Desk, certificates: Path, case: str) -> None:
    """The API can be read, and every span is lost."""
    env, fix = ONLY_SPANS[case]
    ca = str(certificates / "ca.pem")
    trusting = {"SSL_CERT_FILE": ca, "REQUESTS_CA_BUNDLE": ca}
    if case == "netrc":
        (desk.folder / ".netrc").write_text("machine 127.0.0.1 login ada password s3cret\n")
    with desk.serving() as client, with_tls(desk.port, certificates) as base_url:
        ran = run(desk, base_url, **{**trusting, **env})
        assert stored_observations(client) == []
    assert "keys                 accepted" in ran.stdout
    assert "span                 FAILED  " in ran.stdout
    assert (ran.returncode, ran.stderr.count("\n")) == (1, 1)
    assert ran.stderr.startswith(fix)


ACCEPTING = {
    "health": GOOD_HEALTH,
    "projects": PROJECTS,
    "traces": (200, {}, ""),
    "observations": NOTHING,
}
REFUSED: dict[str, tuple[Answer, str, str]] = {  # answer to the span, found, fix
    "a firewall": ((403, {}, ""), "code: 403, reason: Forbidden", "Look at the log of the server"),
    "a server that is down": ((503, {}, ""), "Service Unavailable", "Look at"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_span_that_is_refused_is_not_waited_for(desk: Desk, case: str) -> None:
    answer, found, fix = REFUSED[case]
    with serving(ACCEPTING | {"traces": answer}) as base_url:
        ran = run(desk, base_url)
    assert (ran.returncode, ran.stderr.count("\n")) == (1, 1)
    assert re.search(f"span +FAILED  not accepted: .*{found}", ran.stdout)
    assert ran.stderr.startswith(fix)


def test_a_proxy_that_is_not_there_is_named_for_each_library(desk: Desk) -> None:
    proxy = {"HTTP_PROXY": f"http://127.0.0.1:{free_port()}"}
    ran = run(desk, "http://127.0.0.2:9", **proxy)
    assert (ran.returncode, "the proxy refuses" in ran.stdout) == (1, True)
    assert ran.stderr.startswith("Correct HTTP_PROXY and HTTPS_PROXY")
    try:
        listener = socket.create_server(("127.0.0.2", 0))
    except OSError:
        pytest.skip("this machine has one loopback address only")
    listener.close()
    with serving(ACCEPTING, "127.0.0.2") as base_url:
        ran = run(desk, base_url, **proxy, no_proxy="http://127.0.0.2")  # so only `httpx` reads it
    assert "keys                 accepted" in ran.stdout
    assert "span                 FAILED  not sent: the proxy refuses" in ran.stdout
    assert ran.stderr.startswith("Correct HTTP_PROXY and HTTPS_PROXY")


def edited(desk: Desk, seconds: int) -> str:
    """Return a copy of the recipe that gives up after so many seconds."""
    source = (TOP / "recipes/check_connection.py").read_text()
    assert source.count("GIVE_UP_AFTER = 25 ") == 1
    copy = desk.folder / "check_connection.py"
    copy.write_text(source.replace("GIVE_UP_AFTER = 25 ", f"GIVE_UP_AFTER = {seconds} "))
    return str(copy)


def test_a_span_that_never_becomes_readable_is_waited_for_aloud_and_not_forever(
    desk: Desk,
) -> None:
    keys = {"LANGFUSE_PUBLIC_KEY": KEYS[0], "LANGFUSE_SECRET_KEY": KEYS[1], "PYTHONPATH": str(TOP)}
    with serving(ACCEPTING) as base_url:
        ran = desk.run(edited(desk, 4), LANGFUSE_BASE_URL=base_url, **keys)
    assert (ran.returncode, ran.stderr.count("\n")) == (1, 1)
    assert "  The span was accepted; waiting until it can be read …\n" in ran.stdout
    assert re.search("span +FAILED  accepted, but not readable after [34] s", ran.stdout)
    assert ran.stderr.startswith("Look at the log of langfuse-worker: ")


def test_a_silent_server_is_given_up_before_a_wait_is_announced(desk: Desk) -> None:
    with listening(None) as base_url:
        ran = run(desk, base_url)
    assert ran.returncode == 1
    assert "Waiting" not in ran.stdout
    assert ran.stderr == "Check the host, your VPN and your firewall.\n"
