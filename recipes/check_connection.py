"""Check the connection to Langfuse, and name the one thing to fix.

The SDK sends in the background and never raises into your app, so a wrong key, address or
certificate loses every trace in silence. This checks one step at a time, stops at the first
that fails, and calls it working only when a span has been read back.

Run it:

    python -m recipes.check_connection

It leaves one trace:

    check-connection    span

The exit status is 0 when all is well, and 1 when not, with the fix as one line on stderr. It
is 2 for a setting that cannot be used at all. With tracing off there is nothing to check.

Try next: run it with `LANGFUSE_PUBLIC_KEY=pk-lf-1 LANGFUSE_SECRET_KEY=sk-lf-1` in front, and
once more with `LANGFUSE_BASE_URL=http://localhost:1` as well. Each time, compare the value and
its source in the table with the fix.
"""

import logging
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from logging.handlers import BufferingHandler
from urllib.parse import urlsplit

import httpx
from langfuse import Langfuse
from langfuse.api import ObservationV2
from langfuse.api.core import ApiError, RequestOptions
from requests.utils import get_environ_proxies, get_netrc_auth, select_proxy

from common import console
from common.client import connect, tracing_is_on
from common.readback import poll, sent_count
from common.settings import SettingsError, masked, read_settings

DECISIVE = ("LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY", "LANGFUSE_TRACING_ENABLED")
# Read by the libraries that the SDK is built on.
NETWORK = (
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    *("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("OTEL_SDK_DISABLED", "OTEL_TRACES_SAMPLER", "OTEL_EXPORTER_OTLP_CERTIFICATE"),
)
CLOUD_REGIONS = (
    "https://cloud.langfuse.com",  # EU
    "https://us.cloud.langfuse.com",
    "https://jp.cloud.langfuse.com",
    "https://hipaa.cloud.langfuse.com",
)
OLDEST_SERVER = (4, 59)  # what SDK 5 needs; an older server needs SDK 4
PROXY_FIX = "Correct HTTP_PROXY and HTTPS_PROXY, or name the host in NO_PROXY."
QUICKLY: RequestOptions = {"timeout_in_seconds": 2, "max_retries": 0}
GIVE_UP_AFTER = 25  # seconds for all checks; a request already sent may take 4 more


@dataclass(frozen=True)
class Check:
    """One thing that was tried; `fix` is empty when it worked."""

    name: str
    found: str
    fix: str = ""


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
    given = [(name, os.environ.get(name) or os.environ.get(name.lower())) for name in NETWORK]
    return ours + [(name, shown(name, value), "environment") for name, value in given if value]


def shown(name: str, value: str) -> str:
    """Return a value with a key masked, wherever it stands, and an address without a password.

    `shown("HTTPS_PROXY", "http://ada:secret@proxy:3128") -> "http://…@proxy:3128"`
    """
    if name.endswith("_KEY") or re.match("(pk|sk)-", value):
        return masked(value)
    return re.sub("(^|//)[^/@]*@", r"\1…@", value)


def check_sampling(rate: float) -> Check:
    """Find out from the settings whether traces are recorded at all."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return Check("sampling", "OTEL_SDK_DISABLED is true", "Unset OTEL_SDK_DISABLED.")
    if not rate:
        fix = "Unset LANGFUSE_SAMPLE_RATE, or set it above 0."
        return Check("sampling", "LANGFUSE_SAMPLE_RATE is 0: no trace is sent", fix)
    return Check("sampling", f"{rate:.0%} of all traces are sent")


# %% 2. Check the address, the version and the keys
#
# `langfuse.auth_check()` tells you yes or no, and raises when the server is down. These
# functions make the same requests with a short time limit, and say what to change.


def check_connection(
    langfuse: Langfuse, base_url: str, regions: Sequence[str] = CLOUD_REGIONS
) -> Iterator[Check]:
    """Try the address, the server's version and the keys; the first failure is the last check."""
    try:
        health = langfuse.api.health.health(request_options=QUICKLY)
    except (httpx.HTTPError, ApiError, ValueError) as error:
        yield explain_no_health(base_url, error)
        return
    yield Check("address", f"{base_url} answers {health.status}")
    version = check_version(health.version)
    yield version
    if not version.fix:
        yield check_keys(langfuse, base_url, regions)


def explain_no_health(base_url: str, error: Exception) -> Check:
    """Turn a failed health request into what was found and the one thing to change."""
    said = str(error)
    if isinstance(error, httpx.TimeoutException):
        found, fix = "no answer within 2 seconds", "Check the host, your VPN and your firewall."
    elif isinstance(error, ApiError) and 300 <= (error.status_code or 0) < 400:
        target = urlsplit((error.headers or {}).get("location", ""))
        found = f"it redirects to {target.scheme}://{target.netloc}"
        fix = f"Set LANGFUSE_BASE_URL={target.scheme}://{target.netloc}"
    elif isinstance(error, httpx.RemoteProtocolError) or "HTTPS port" in said:
        found, fix = "the server expects https", "Write https:// in LANGFUSE_BASE_URL."
    elif "CERTIFICATE_VERIFY_FAILED" in said:
        found, fix = explain_certificate(said)
    elif isinstance(error, httpx.ProxyError | httpx.ConnectError) and uses_proxy(base_url):
        found, fix = f"the proxy refuses ({said})", PROXY_FIX
    elif "SSL" in said:
        found, fix = "the server does not speak https", "Write http:// in LANGFUSE_BASE_URL."
    elif "[Errno -" in said or "getaddrinfo" in said:
        found, fix = "no such host is known here", "Check LANGFUSE_BASE_URL and your network."
    elif isinstance(error, httpx.HTTPError):
        found, fix = f"nothing listens there ({said})", "Start it, or correct LANGFUSE_BASE_URL."
    elif isinstance(error, ApiError) and (error.status_code or 0) >= 500:
        found, fix = f"it answers {error.status_code}", "Look at the server's log, or try again."
    else:
        found = "what answers is not Langfuse, but perhaps a proxy's sign-in page"
        fix = "Correct LANGFUSE_BASE_URL, or have the proxy let this address through."
    return Check("address", f"{base_url}: {found}", fix)


def uses_proxy(base_url: str) -> bool:
    """Return whether the environment sends requests for this address through a proxy."""
    return bool(select_proxy(base_url, get_environ_proxies(base_url)))


def explain_certificate(said: str) -> tuple[str, str]:
    """Return what is wrong with a certificate, and the fix.

    The API is read with `httpx`, spans are sent with `requests`, and each has a variable of
    its own. Either one replaces the CAs that are trusted otherwise: a program that also calls
    public hosts needs theirs in the same file.
    """
    if "mismatch" in said:
        fix = "Write the host in LANGFUSE_BASE_URL as the certificate names it."
        return "its certificate is for another host", fix
    if "expired" in said:
        return "its certificate has expired", "Renew it, or correct the clock of this machine."
    fix = "Set SSL_CERT_FILE and REQUESTS_CA_BUNDLE, both, to a file with your company's CA."
    return "its certificate is not trusted", fix


def check_version(version: str) -> Check:
    """Compare the server's version with the oldest one that SDK 5 can talk to."""
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < OLDEST_SERVER:
        fix = "Upgrade the server to Langfuse 4.59, or keep it and `pip install 'langfuse<5'`."
        return Check("version", f"{version} is too old for SDK 5", fix)
    return Check("version", version)


def check_keys(langfuse: Langfuse, base_url: str, regions: Iterable[str]) -> Check:
    """Ask which project the keys belong to.

    On Langfuse Cloud, the right key in the wrong region looks like a wrong key. The other
    regions are only asked whether they answer; the keys are not sent there.
    """
    try:
        projects = langfuse.api.projects.get(request_options=QUICKLY).data
    except (httpx.HTTPError, ApiError, ValueError) as error:
        status = error.status_code if isinstance(error, ApiError) else None
        if status not in (401, 403):
            return Check("keys", f"no answer ({status or error})", "Look at the server's log.")
        fix = "Copy both keys again from the project's settings, API Keys."
        if base_url in regions:
            others = " or ".join(reachable(url for url in regions if url != base_url))
            others = others or "none of them answers"
            fix += f" Keys of another region need its LANGFUSE_BASE_URL: {others}."
        return Check("keys", f"refused ({status})", fix)
    return Check("keys", f"accepted, for the project {', '.join(each.name for each in projects)}")


def reachable(urls: Iterable[str]) -> list[str]:
    """Return those of the addresses that answer a health request within 2 seconds."""
    answering = []
    for url in urls:
        try:
            httpx.get(f"{url}/api/public/health", timeout=2).raise_for_status()
        except httpx.HTTPError:
            continue
        answering.append(url)
    return answering


# %% 3. Send one span, and read it back
#
# Spans do not travel like the requests so far: OpenTelemetry's exporter sends them with
# `requests`, which trusts other certificates and reads `~/.netrc`. When that fails, only its
# log says so. And a span that was accepted is not stored yet: a worker does that later.


def send_span(langfuse: Langfuse) -> tuple[str, str]:
    """Send one span; return its trace id, and what the exporter logged if it failed.

    In Langfuse: open Tracing. `check-connection` is the newest row.
    """
    exporter, log = logging.getLogger("opentelemetry.exporter"), BufferingHandler(1000)
    before = exporter.level
    exporter.addHandler(log)
    exporter.setLevel(logging.WARNING)
    try:
        with langfuse.start_as_current_observation(
            name="check-connection", input="Does this span arrive?", output="It does."
        ):
            trace_id = langfuse.get_current_trace_id() or ""
        langfuse.flush()
    finally:
        exporter.removeHandler(log)
        exporter.setLevel(before)
    is_lost = any(record.levelno >= logging.ERROR for record in log.buffer)  # not: a retry
    return trace_id, " ".join(record.getMessage() for record in log.buffer) if is_lost else ""


def explain_failed_export(base_url: str, said: str) -> Check:
    """Turn what the exporter logged into what was found and the one thing to change."""
    ca = os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")
    if "CERTIFICATE_VERIFY_FAILED" in said:
        found = "not sent: `requests`, which sends spans, does not trust the certificate"
        as_well = f"Set REQUESTS_CA_BUNDLE={ca}, too: `requests` does not read SSL_CERT_FILE."
        fix = as_well if ca else "Set REQUESTS_CA_BUNDLE to a file that has this server's CA."
    elif "CA certificate bundle" in said or "[X509" in said:
        found = "not sent: REQUESTS_CA_BUNDLE names no file with certificates"
        fix = "Correct the path in REQUESTS_CA_BUNDLE."
    elif "ProxyError" in said:
        found, fix = "not sent: the proxy refuses", PROXY_FIX
    elif "code: 401" in said and get_netrc_auth(base_url):
        found = "refused (401): `requests` sends the password from ~/.netrc in place of the keys"
        fix = f"Remove {urlsplit(base_url).hostname} from ~/.netrc."
    elif "timed out" in said:
        found, fix = "not accepted in time", "Raise LANGFUSE_TIMEOUT."
    else:
        found = f"not accepted: {said[:300]}"
        fix = "Look at the log of the server, or of the proxy in front of it."
    return Check("span", found, fix)


def check_stored(langfuse: Langfuse, base_url: str, trace_id: str, seconds: float) -> Check:
    """Wait until an accepted span can be read through the API, for at most so many seconds."""
    begin = time.monotonic()

    def read() -> list[ObservationV2]:
        get = langfuse.api.observations.get_many
        return list(get(trace_id=trace_id, fields="core", request_options=QUICKLY).data)

    try:
        stored = poll(read, until=bool, seconds=seconds)
    except (httpx.HTTPError, ApiError, ValueError) as error:
        said = error.status_code if isinstance(error, ApiError) else error
        found = f"accepted, but reading it back fails ({said})"
        return Check("span", found, "Look at the server's log, or try again.")
    took = time.monotonic() - begin
    if stored:
        return Check("span", f"sent, and read back {took:.1f} s later")
    is_cloud = base_url in CLOUD_REGIONS
    where = "https://status.langfuse.com" if is_cloud else "the log of langfuse-worker"
    fix = f"Look at {where}: the server accepts spans, but does not store them."
    return Check("span", f"accepted, but not readable after {took:.0f} s", fix)


# %% 4. Report each step, and stop at the first failure
#
# A step that takes longer than 3 seconds says what it is waiting for.


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Print what is awaited once the block has taken 3 seconds."""
    timer = threading.Timer(3, console.show_line, [f"  {text} …"])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def report(check: Check) -> None:
    """Print what a check found; where it failed, end the program with the fix."""
    console.show_result(check.name, f"{'FAILED  ' if check.fix else ''}{check.found}")
    if check.fix:
        console.fail(check.fix, 1)


def main() -> None:
    """Show the settings, check one step after the other, and draw the span that arrived."""
    console.show_section("1. Current settings")
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

    console.show_section("2. Address, version and keys")
    report(check_sampling(float(settings["LANGFUSE_SAMPLE_RATE"].value)))
    try:
        timeout = min(int(settings["LANGFUSE_TIMEOUT"].value), 10)
        langfuse = Langfuse(sample_rate=1.0, timeout=timeout)  # this one span is always sent
    except OSError as error:
        console.fail(f"Correct the path in SSL_CERT_FILE: no certificates there ({error}).", 1)
    with waiting(f"Waiting for an answer from {base_url}"):
        for check in check_connection(langfuse, base_url):
            report(check)

    console.show_section("3. One span, sent and read back")
    with waiting("Waiting until the span is accepted"):
        trace_id, failure = send_span(langfuse)
    if not sent_count(trace_id):
        report(Check("span", "OpenTelemetry did not record it", "Unset OTEL_TRACES_SAMPLER."))
    if failure:
        report(explain_failed_export(base_url, failure))
    with waiting("The span was accepted; waiting until it can be read"):
        left = begin + GIVE_UP_AFTER - time.monotonic()
        report(check_stored(langfuse, base_url, trace_id, left))
    console.show_trace(trace_id)


if __name__ == "__main__":
    main()
