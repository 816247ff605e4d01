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
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from conftest import KEYS, TOP, Desk, free_port, stored_observations
from langfuse.api import LangfuseAPI
from recording_proxy import proxy_to

from recipes import check_connection
from recipes.check_connection import NO_ANSWER, NOT_SENT, check_address, check_keys, look_up

RECIPE = "recipes.check_connection"
TRUST = ssl.create_default_context()  # once: it loads all certificates
Answer = tuple[int, dict[str, str], str]  # status, headers, body
OF_SHOP = {"id": "p", "name": "shop", "organization": {"id": "o", "name": "o"}, "metadata": {}}
GOOD: dict[str, Answer] = {  # by the last word of the path
    "health": (200, {}, json.dumps({"status": "OK", "version": "4.59.0"})),
    "projects": (200, {}, json.dumps({"data": [OF_SHOP]})),
    "traces": (200, {}, ""),
    "observations": (200, {}, json.dumps({"data": [], "meta": {}})),
}


@contextmanager
def serving(answers: dict[str, Answer]) -> Iterator[str]:
    """Serve these fixed answers, or else the good ones, and yield the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers["content-length"] or 0))
            path = self.path.partition("?")[0]
            status, headers, body = (GOOD | answers)[path.rpartition("/")[2]]
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_GET  # noqa: N815  http.server's own name

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        # It looks whether it shall end only so often: by itself every half second.
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def last_check(base_url: str) -> tuple[str, str]:
    """Check with as much of a client as is needed: the SDK's own for the API."""
    with httpx.Client(trust_env=False, verify=TRUST) as http:
        api = LangfuseAPI(base_url=base_url, username=KEYS[0], password=KEYS[1], httpx_client=http)
        client: Any = SimpleNamespace(api=api)
        found, fix = check_address(client, base_url)
        return (found, fix) if fix else check_keys(client, base_url)


HTML: Answer = (200, {"Content-Type": "text/html"}, "<html>Please sign in</html>")
HTTPS: Answer = (400, HTML[1], "The plain HTTP request was sent to HTTPS port")
MOVED: Answer = (308, {"Location": "https://langfuse.example/api/public/health"}, "")
OLD: Answer = (200, {}, '{"status": "OK", "version": "3.120.1"}')
FAILING: dict[str, tuple[dict[str, Answer], str, str]] = {  # answers, found, fix
    "a proxy's page": ({"health": HTML}, "not Langfuse", "have the proxy let this"),
    "another service": ({"health": (200, {}, '{"up": true}')}, "not Langfuse", "LANGFUSE_BASE_URL"),
    "no such page": ({"health": (404, {}, "{}")}, "not Langfuse", "LANGFUSE_BASE_URL"),
    "http to https": ({"health": HTTPS}, "expects https", "https://"),
    "a new address": (
        {"health": MOVED},
        "redirects",
        "Set LANGFUSE_BASE_URL=https://langfuse.example",
    ),
    "a sign-in": ({"health": (302, {"Location": "https://sign.in"}, "")}, "sign-in", "let this"),
    "a database down": ({"health": (503, {}, "{}")}, "fails (status 503", "log"),
    "an old server": ({"health": OLD}, "3.120.1 is too old", "langfuse<5"),
    "a page instead of projects": ({"projects": HTML}, "not Langfuse", "LANGFUSE_BASE_URL"),
}


@pytest.mark.parametrize("case", FAILING)
def test_explains_what_answers_wrongly(case: str) -> None:
    answers, expected, fix = FAILING[case]
    with serving(answers) as base_url:
        check = last_check(base_url)
    assert expected in check[0]
    assert fix in check[1]


def test_explains_what_does_not_speak_the_same_protocol() -> None:
    with serving({}) as base_url:
        found, fix = last_check(base_url.replace("http:", "https:"))
    assert ("does not speak https" in found, "http://" in fix) == (True, True)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"\x15\x03\x01\x00\x02\x02\x46")  # an alert of TLS

        threading.Thread(target=refuse, daemon=True).start()
        found, fix = last_check(f"http://127.0.0.1:{listener.getsockname()[1]}")
    assert ("expects https" in found, "https://" in fix) == (True, True)


SAID = [  # what no server here can bring about
    (NO_ANSWER, "ConnectError: [Errno 8] nodename nor servname, or not known", "no such host"),
    (NO_ANSWER, "ConnectError: [Errno -3] Temporary failure in name resolution", "no such host"),
    (NO_ANSWER, "ConnectError: [SSL] certificate has expired", "its certificate has expired"),
    (NO_ANSWER, "ConnectError: [SSL] Hostname mismatch", "its certificate names another host"),
    (NOT_SENT, "Transient error (Caused by ProxyError('Unable to connect'))", "the proxy refuses"),
    (NOT_SENT, "HTTPConnectionPool: Read timed out. (read timeout=5)", "it takes too long"),
]


@pytest.mark.parametrize(("table", "said", "found"), SAID)
def test_looks_up_what_an_error_means(table: Any, said: str, found: str) -> None:
    assert look_up(table, said)[0] == f"{found} ({said})"


def test_other_regions_are_named_only_on_langfuse_cloud(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving({"projects": (401, {}, "{}")}) as base_url:
        elsewhere = last_check(base_url)
        monkeypatch.setattr(check_connection, "REGIONS", [base_url, "https://us.example"])
        on_cloud = last_check(base_url)
    copied = "Copy both keys again from the project's settings, API Keys."
    assert elsewhere == ("refused (401)", copied)
    region = " Keys of another region need its LANGFUSE_BASE_URL: https://us.example."
    assert on_cloud[1] == copied + region


# %% As a reader runs it


def run(desk: Desk, base_url: str, **env: str) -> subprocess.CompletedProcess[str]:
    keys = {"LANGFUSE_PUBLIC_KEY": KEYS[0], "LANGFUSE_SECRET_KEY": KEYS[1]}
    return desk.run("-m", RECIPE, **{**keys, "LANGFUSE_BASE_URL": base_url, **env})


def failed(ran: subprocess.CompletedProcess[str], row: str, found: str, fix: str) -> None:
    """Assert that a run ended with this row of what was found, and one line with the fix."""
    assert re.search(rf"^  {row} +FAILED  .*{re.escape(found)}", ran.stdout, re.MULTILINE), (
        ran.stdout
    )
    assert ran.stderr.startswith(fix), ran.stderr
    assert (ran.returncode, ran.stderr.count("\n")) == (1, 1)


def test_all_is_well_with_nothing_and_twice_on_one_database(desk: Desk) -> None:
    for times, rate in ((1, "1"), (2, "0.000001")):  # this one span is always sent
        ran = desk.run("-m", RECIPE, LANGFUSE_SAMPLE_RATE=rate)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert "keys                 accepted, for the project local_langfuse\n" in ran.stdout
        assert "Answers come from" not in ran.stdout, "no model is asked"
        assert re.search(r"^  stored +read back [\d.]+ s later$", ran.stdout, re.MULTILINE)
        assert re.search(r"^  LANGFUSE_PUBLIC_KEY +not set +default", ran.stdout, re.MULTILINE)
        with desk.serving() as client:
            stored = stored_observations(client)
            names = [(row["name"], row["type"], row["isRootObservation"]) for row in stored]
            assert names == [("check-connection", "SPAN", True)] * times
            assert stored[-1]["traceId"] in ran.stdout


def test_the_table_says_where_a_value_comes_from_and_keeps_secrets(desk: Desk) -> None:
    code = f"from {RECIPE} import current_settings; [print(*row) for row in current_settings()]"
    given = {
        "LANGFUSE_PUBLIC_KEY": "pk-lf-of-the-shell-9876",
        "OPENAI_BASE_URL": "http://ada:s3cret@127.0.0.1/v1",
        "LANGFUSE_RELEASE": "sk-lf-pasted-here-by-mistake",
        "https_proxy": "bob:s3cret@proxy:3128",
        "NO_PROXY": "http://proxy:3128/a@b",
    }
    assert desk.run("-c", code, **given).stdout.splitlines() == [
        "LANGFUSE_PUBLIC_KEY pk-lf-…9876 environment",
        "LANGFUSE_SECRET_KEY not set default",
        "LANGFUSE_TRACING_ENABLED true default",
        "LANGFUSE_RELEASE sk-lf-…take environment",
        f"LOCAL_LANGFUSE_PORT {desk.port} environment",
        f"LOCAL_LANGFUSE_DB {desk.db} environment",
        "OPENAI_BASE_URL http://…@127.0.0.1/v1 environment",
        "HTTPS_PROXY …@proxy:3128 environment",
        "NO_PROXY http://proxy:3128/a@b environment",
    ]


def test_wrong_keys_end_with_the_fix_and_are_not_shown(desk: Desk) -> None:
    with desk.serving() as client:
        ran = run(desk, str(client.base_url), LANGFUSE_SECRET_KEY="sk-lf-not-this-one")
    failed(ran, "keys", "refused (401)", "Copy both keys again from the project's settings")
    assert "not-this-one" not in ran.stdout


def test_an_address_that_does_not_answer_is_given_up_at_once(desk: Desk) -> None:
    ran = run(desk, f"http://127.0.0.1:{free_port()}")
    failed(ran, "address", "nothing listens", "Start the server, or correct LANGFUSE_BASE_URL.")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ran = run(desk, f"http://127.0.0.1:{silent.getsockname()[1]}")
    failed(ran, "address", "no answer within 2 seconds", "Check the host, your VPN")
    assert "Waiting" not in ran.stdout, "that comes after 3 seconds"
    ran = run(desk, "http://127.0.0.2:9", HTTP_PROXY=f"http://127.0.0.1:{free_port()}")
    failed(ran, "address", "the proxy refuses", "Correct HTTP_PROXY and HTTPS_PROXY")


def test_a_setting_that_cannot_be_used_is_refused_below_the_table(desk: Desk) -> None:
    ran = desk.run("-m", RECIPE, LANGFUSE_PUBLIC_KEY="pk-lf-alone")
    assert ran.returncode == 2
    assert ran.stderr.startswith("LANGFUSE_SECRET_KEY is missing")
    assert re.search(r"LANGFUSE_SECRET_KEY +not set +default", ran.stdout)


def test_with_tracing_off_nothing_is_asked(desk: Desk) -> None:
    refused = desk.folder / "refused"
    off = {"LANGFUSE_TRACING_ENABLED": "false", "PYTHONPATH": str(TOP / "tests/refuse_sockets")}
    off |= {"REFUSE_SOCKETS": "all", "REFUSED_SOCKETS_FILE": str(refused)}
    ran = run(desk, f"http://127.0.0.1:{desk.port}", **off)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "Tracing is off" in ran.stdout
    assert not refused.exists()


STOPPING = {
    "LANGFUSE_SAMPLE_RATE": ("0", "Unset LANGFUSE_SAMPLE_RATE, or set it above 0.\n"),
    "OTEL_SDK_DISABLED": ("true", "Unset OTEL_SDK_DISABLED.\n"),
    "OTEL_TRACES_SAMPLER": ("always_off", "Unset OTEL_TRACES_SAMPLER.\n"),
    "SSL_CERT_FILE": ("/no/such.pem", "SSL_CERT_FILE names no file with certificates: "),
}


@pytest.mark.parametrize("name", STOPPING)
def test_a_variable_that_stops_everything_is_named(desk: Desk, name: str) -> None:
    value, fix = STOPPING[name]
    ran = desk.run("-m", RECIPE, **{name: value})
    assert (ran.returncode, ran.stderr.count("\n")) == (1, 1)
    assert ran.stderr.startswith(fix)


# %% Certificates


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CA of our own, and what it signed: a server's certificate and its key."""
    if not shutil.which("openssl") and not os.environ.get("CI"):
        pytest.skip("needs the `openssl` command")
    folder = tmp_path_factory.mktemp("certificates")
    new = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj"
    ca = f"{new} /CN=ca -out ca.pem -keyout ca.key -addext keyUsage=critical,keyCertSign"
    server = f"{new} /CN=server -out server.pem -keyout server.key -CA ca.pem -CAkey ca.key"
    limits = "-addext basicConstraints=critical,CA:FALSE -addext subjectAltName=IP:127.0.0.1"
    for command in (ca, f"{server} {limits}"):
        subprocess.run(command.split(), check=True, capture_output=True, cwd=folder)
    return folder


@contextmanager
def with_tls(port: int, certificates: Path) -> Iterator[str]:
    """Speak HTTPS in front of a server, and yield the address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    with proxy_to(f"http://127.0.0.1:{port}") as proxy:
        proxy.socket = context.wrap_socket(proxy.socket, server_side=True)
        yield proxy.url.replace("http:", "https:")


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
        fix = "Set SSL_CERT_FILE and REQUESTS_CA_BUNDLE, both, to a file"
        failed(ran, "address", "its certificate is not trusted", fix)
    assert "keys                 accepted" in only_api.stdout, "all other checks pass"
    failed(only_api, "sent", "`requests` does not trust", "Set REQUESTS_CA_BUNDLE to the same file")
    assert (both.returncode, both.stderr) == (0, "")


# %% The span's own way


@pytest.mark.parametrize("file", ["REQUESTS_CA_BUNDLE", "~/.netrc"])
def test_what_only_the_exporter_reads_is_named(desk: Desk, certificates: Path, file: str) -> None:
    """The API can be read, and every span is lost."""
    ca = str(certificates / "ca.pem")
    bundle = ca if file == "~/.netrc" else "/no/such.pem"
    (desk.folder / ".netrc").write_text("machine 127.0.0.1 login ada password s3cret\n")
    with desk.serving() as client, with_tls(desk.port, certificates) as base_url:
        ran = run(desk, base_url, SSL_CERT_FILE=ca, REQUESTS_CA_BUNDLE=bundle)
        assert stored_observations(client) == []
    assert "keys                 accepted" in ran.stdout
    failed(ran, "sent", "", "Remove this host from" if bundle == ca else "Correct the path in")
    assert ran.stderr.endswith(f"{file}.\n")


@pytest.mark.parametrize(("status", "said"), [(403, "reason: Forbidden"), (503, "Service Unavail")])
def test_a_span_that_is_refused_is_not_waited_for(desk: Desk, status: int, said: str) -> None:
    with serving({"traces": (status, {}, "")}) as base_url:
        ran = run(desk, base_url)
    failed(ran, "sent", said, "Look at the log of the server")


def test_a_span_that_never_becomes_readable_is_waited_for_aloud(desk: Desk) -> None:
    keys = {"LANGFUSE_PUBLIC_KEY": KEYS[0], "LANGFUSE_SECRET_KEY": KEYS[1]}
    edit = ("GIVE_UP_AFTER = 25 ", "GIVE_UP_AFTER = 4 ")
    (desk.folder / "recipes").mkdir()
    with serving({}) as url:
        ran = desk.run_edited("recipes/check_connection.py", edit, LANGFUSE_BASE_URL=url, **keys)
    failed(ran, "stored", "not readable after ", "Look at the log of langfuse-worker, or at")
    assert "  Waiting until the span can be read …\n" in ran.stdout
