"""Check the connection to Langfuse, and name the one thing to fix.

The SDK sends in the background and never raises an error in your app, so with a wrong key,
address or certificate every trace is lost in silence. This checks one step at a time, stops at
the first that fails, and calls it working only when a span has been read back.

Run it:

    python -m recipes.check_connection

The trace:

    check-connection    span

The exit status is 0 when all is well, and 1 when not, with the fix as one line on stderr. It
is 2 for a setting that cannot be used at all.

Try next: run it with `LANGFUSE_PUBLIC_KEY=pk-lf-1 LANGFUSE_SECRET_KEY=sk-lf-1` in front, and
once more with `LANGFUSE_BASE_URL=http://localhost:1` as well. Each time, compare the values
and their sources in the table with the fix.
"""

import logging
import os
import re
import textwrap
import time
from logging.handlers import BufferingHandler

import httpx
from langfuse import Langfuse
from langfuse.api.core import ApiError, RequestOptions
from requests.utils import get_environ_proxies, select_proxy

from common import console
from common.client import connect, tracing_is_on
from common.readback import poll, sent_count
from common.settings import SettingsError, masked, read_settings

Found = tuple[str, str]  # what was found, and the one thing to change: "" if it works
DECISIVE = ("LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY", "LANGFUSE_TRACING_ENABLED")
NETWORK = (  # read by the libraries that the SDK is built on
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    *("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("OTEL_SDK_DISABLED", "OTEL_TRACES_SAMPLER"),
)
REGIONS = ["https://cloud.langfuse.com", "https://us.cloud.langfuse.com"]
REGIONS += ["https://jp.cloud.langfuse.com", "https://hipaa.cloud.langfuse.com"]
OLDEST_SERVER = (4, 59)  # what SDK 5 needs; an older server needs SDK 4
QUICKLY: RequestOptions = {"timeout_in_seconds": 2, "max_retries": 0}
GIVE_UP_AFTER = 25  # seconds for all checks; a request already sent may take 4 more
FAILURES = (httpx.HTTPError, ApiError, ValueError)  # ValueError: the answer has another form


# %% 1. Show the current settings
#
# A value can come from three places, and the wrong one wins silently: a variable you
# exported last week beats the `.env` you are editing now.


def current_settings() -> list[tuple[str, str, str]]:
    """Return name, value and source of each setting that is set or decides; keys are masked.

    In Langfuse: a project's settings show its public keys under API Keys. Compare the last
    four characters with the row here.
    """
    ours = [
        (name, shown(name, value) or "not set", source)
        for name, value, source in read_settings().values()
        if source != "default" or name in DECISIVE
    ]
    others = [(name, os.environ.get(name) or os.environ.get(name.lower())) for name in NETWORK]
    return ours + [(name, shown(name, value), "environment") for name, value in others if value]


def shown(name: str, value: str) -> str:
    """Return a value with a key masked, wherever it is, and an address without a password.

    `shown("HTTPS_PROXY", "http://ada:secret@proxy:3128") -> "http://…@proxy:3128"`
    """
    if name.endswith("_KEY") or re.match("(pk|sk)-", value):
        return masked(value)
    return re.sub("(^|//)[^/@]*@", r"\1…@", value)


def check_sampling(rate: float) -> Found:
    """Find out whether the settings let any trace be sent."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return "OpenTelemetry is off", "Unset OTEL_SDK_DISABLED."
    fix = "" if rate else "Unset LANGFUSE_SAMPLE_RATE, or set it above 0."
    return f"{100 * rate:g}% of all traces are sent", fix


# %% 2. Look up what an error means
#
# The API is read with `httpx`, spans are sent with `requests`, and each reads variables of its
# own. The first row whose pattern is found in an error says what is wrong, and the fix.

CA_FIX = "Set SSL_CERT_FILE and REQUESTS_CA_BUNDLE, both, to a file with your company's CA."
BUNDLE_FIX = "Set REQUESTS_CA_BUNDLE to the same file: `requests` does not read SSL_CERT_FILE."
PAGE_FIX = "Correct LANGFUSE_BASE_URL, or have the proxy let this address through."
PROXY_FIX = "Correct HTTP_PROXY and HTTPS_PROXY, or name the host in NO_PROXY."
LOG_FIX = "Look at the log of the server, or of the proxy in front of it."
NO_ANSWER = (
    ("RemoteProtocol|HTTPS port", "it expects https", "Write https:// in LANGFUSE_BASE_URL."),
    ("^status 5", "the server fails", LOG_FIX),
    ("^status", "what answers is not Langfuse, but perhaps a proxy's sign-in page", PAGE_FIX),
    ("Timeout", "no answer within 2 seconds", "Check the host, your VPN and your firewall."),
    ("mismatch", "its certificate names another host", "Write that host in LANGFUSE_BASE_URL."),
    ("expired", "its certificate has expired", "Renew it, or correct this machine's clock."),
    ("CERTIFICATE", "its certificate is not trusted", CA_FIX),
    ("through a proxy$", "the proxy refuses", PROXY_FIX),
    ("SSL", "it does not speak https", "Write http:// in LANGFUSE_BASE_URL."),
    ("not known|name res|getaddrinfo", "no such host", "Check LANGFUSE_BASE_URL and your network."),
    ("", "nothing listens there", "Start the server, or correct LANGFUSE_BASE_URL."),
)
NOT_SENT = (
    ("CERTIFICATE_VERIFY", "`requests` does not trust the certificate", BUNDLE_FIX),
    ("CA certificate|X509", "it finds no certificates", "Correct the path in REQUESTS_CA_BUNDLE."),
    ("ProxyError", "the proxy refuses", PROXY_FIX),
    ("code: 401", "its password is taken from ~/.netrc", "Remove this host from ~/.netrc."),
    ("timed out", "it takes too long", "Raise LANGFUSE_TIMEOUT."),
    ("", "it is not accepted", LOG_FIX),
)


def look_up(table: tuple[tuple[str, str, str], ...], said: str) -> Found:
    """Return what an error means, with the error itself, and the fix."""
    found, fix = next((found, fix) for pattern, found, fix in table if re.search(pattern, said))
    return f"{found} ({textwrap.shorten(said, 200, placeholder=' …')})", fix


def explain(base_url: str, error: Exception) -> Found:
    """Return why a request to the API failed, and the fix."""
    if isinstance(error, httpx.HTTPError):
        proxied = select_proxy(base_url, get_environ_proxies(base_url))
        said = f"{type(error).__name__}: {error}"
        return look_up(NO_ANSWER, f"{said}, through a proxy" if proxied else said)
    if not isinstance(error, ApiError):
        return look_up(NO_ANSWER, f"status 200: {error}")
    to, _, is_same_page = (error.headers or {}).get("location", "").partition("/api/public/")
    if is_same_page:
        return f"it redirects to {to}", f"Set LANGFUSE_BASE_URL={to}"
    return look_up(NO_ANSWER, f"status {error.status_code}: {error.body}")


# %% 3. Ask the server
#
# `langfuse.auth_check()` says yes or no, and raises when the server is down. These functions
# make the same requests with a short time limit.


def check_address(langfuse: Langfuse, base_url: str) -> Found:
    """Find out whether a Langfuse answers, and whether it is new enough for SDK 5."""
    try:
        health = langfuse.api.health.health(request_options=QUICKLY)
    except FAILURES as error:
        return explain(base_url, error)
    if tuple(map(int, re.findall(r"\d+", health.version)[:2])) < OLDEST_SERVER:
        fix = "Upgrade the server to Langfuse 4.59, or keep it and `pip install 'langfuse<5'`."
        return f"version {health.version} is too old for SDK 5", fix
    return f"Langfuse {health.version} answers {health.status}", ""


def check_keys(langfuse: Langfuse, base_url: str) -> Found:
    """Ask which project the keys belong to; in another region of Langfuse Cloud, to none."""
    try:
        projects = langfuse.api.projects.get(request_options=QUICKLY).data
    except FAILURES as error:
        if not isinstance(error, ApiError) or error.status_code not in (401, 403):
            return explain(base_url, error)
        fix = "Copy both keys again from the project's settings, API Keys."
        if base_url in REGIONS:
            others = " or ".join(url for url in REGIONS if url != base_url)
            fix += f" Keys of another region need its LANGFUSE_BASE_URL: {others}."
        return f"refused ({error.status_code})", fix
    return f"accepted, for the project {', '.join(each.name for each in projects)}", ""


# %% 4. Send one span, and read it back
#
# When OpenTelemetry's exporter cannot send a span, only its log says so. And a span that was
# accepted is not stored yet: a worker of the server does that later.


def send_span(langfuse: Langfuse) -> tuple[str, str]:
    """Send one span; return its trace id, and what the exporter logged if it failed.

    In Langfuse: open Tracing. `check-connection` is the newest row.
    """
    exporter, log = logging.getLogger("opentelemetry.exporter"), BufferingHandler(1000)
    before = exporter.level
    exporter.addHandler(log)
    exporter.setLevel(logging.WARNING)
    with langfuse.start_as_current_observation(
        name="check-connection", input="Does this span arrive?", output="It does."
    ):
        trace_id = langfuse.get_current_trace_id() or ""
    langfuse.flush()
    exporter.removeHandler(log)
    exporter.setLevel(before)
    is_lost = any(record.levelno >= logging.ERROR for record in log.buffer)  # not: a retry
    return trace_id, " ".join(record.getMessage() for record in log.buffer) if is_lost else ""


def check_sent(trace_id: str, failure: str) -> Found:
    """Find out whether the span was recorded at all, and then whether it was accepted."""
    if not sent_count(trace_id):
        return "OpenTelemetry did not record it", "Unset OTEL_TRACES_SAMPLER."
    return look_up(NOT_SENT, failure) if failure else ("accepted", "")


def check_stored(langfuse: Langfuse, base_url: str, trace_id: str, seconds: float) -> Found:
    """Wait until an accepted span can be read through the API, for at most so many seconds."""
    begin, get = time.monotonic(), langfuse.api.observations.get_many
    try:
        stored = poll(
            lambda: get(trace_id=trace_id, fields="core", request_options=QUICKLY).data,
            until=bool,
            seconds=seconds,
        )
    except FAILURES as error:
        return explain(base_url, error)
    took = time.monotonic() - begin
    if stored:
        return f"read back {took:.1f} s later", ""
    fix = "Look at the log of langfuse-worker, or at https://status.langfuse.com for the cloud."
    return f"not readable after {took:.0f} s", fix


def report(name: str, found: str, fix: str) -> None:
    """Print what a check found; where it failed, end the program with the fix."""
    console.show_result(name, f"FAILED  {found}" if fix else found)
    if fix:
        console.fail(fix, 1)


def main() -> None:
    """Show the settings, check one step after the other, and draw the span that arrived."""
    console.show_section("Current settings")
    try:
        console.show_table(("setting", "value", "from"), current_settings())
        settings = read_settings()
    except SettingsError as error:
        console.fail(str(error), 2)
    connect(asks_model=False)
    if not tracing_is_on():
        console.show_line("There is nothing to check.")
        return
    begin, base_url = time.monotonic(), os.environ["LANGFUSE_BASE_URL"]
    rate, timeout = (settings[f"LANGFUSE_{name}"].value for name in ("SAMPLE_RATE", "TIMEOUT"))
    console.show_section("The server")
    report("sampling", *check_sampling(float(rate)))
    langfuse = Langfuse(sample_rate=1.0, timeout=min(int(timeout), 10))  # this span is always sent
    with console.waiting(f"Waiting for an answer from {base_url}"):
        report("address", *check_address(langfuse, base_url))
        report("keys", *check_keys(langfuse, base_url))
    console.show_section("One span, sent and read back")
    with console.waiting("Waiting until the span is accepted"):
        trace_id, failure = send_span(langfuse)
    report("sent", *check_sent(trace_id, failure))
    with console.waiting("Waiting until the span can be read"):
        left = begin + GIVE_UP_AFTER - time.monotonic()
        report("stored", *check_stored(langfuse, base_url, trace_id, left))
    console.show_trace(trace_id)


if __name__ == "__main__":
    main()
