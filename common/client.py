"""`connect()` finds out where traces go and which model answers, and sets the environment."""

import atexit
import json
import logging
import os
import sys
import textwrap
from contextlib import suppress
from datetime import UTC, datetime
from importlib import import_module
from types import TracebackType
from urllib.parse import urlsplit
from urllib.request import getproxies

import httpx
from langfuse.api.core import ApiError

import local_langfuse
import local_model
from common.console import fail, links, show_line
from common.pricing import price_of
from common.readback import NotStoredError, count_spans, loss
from common.settings import (
    MARK,
    TOP,
    Destination,
    SettingsError,
    check_url,
    choose_destination,
    masked,
    read_settings,
    set_by_connect,
)
from common.tokens import is_exact

OFF = ("pk-lf-off", "sk-lf-off")  # with no key at all the SDK logs a warning at every call
GIVEN = (  # with their defaults
    *("LANGFUSE_TRACING_ENVIRONMENT", "LANGFUSE_RELEASE"),
    *("OPENAI_MODEL", "OPENAI_EMBEDDING_MODEL"),
)


def connect(*, asks_model: bool = True) -> None:
    """Set the environment so that `Langfuse()` and `OpenAI()` need no argument; print what holds.

    Tracing is off with `LANGFUSE_TRACING_ENABLED=false`; it goes to Langfuse with both keys;
    otherwise to a stand-in on this machine: one that is running with our file, or one that
    is started inside this process. A local model answers where neither OPENAI_API_KEY nor
    OPENAI_BASE_URL is set, except in a program that says it asks no model. A setting that
    cannot work ends the program: one line on stderr, exit status 2. A second call is harmless.

    It creates no client. Beside setting the environment, it counts the spans of the first
    client, so that `show_trace` knows when a trace is complete; silences two loggers that
    would report an error twice; and has the errors of both services told in one line.
    """
    sys.excepthook = _explain
    before = set_by_connect()  # by an earlier call, or in the process that started this one
    try:
        settings = read_settings()
        destination = choose_destination(settings)
        _reach_loopback_directly()
        put = {name: settings[name].value for name in GIVEN}
        traces, lines = _langfuse(destination, before.get("LANGFUSE_BASE_URL", ""))
        put |= traces
        if asks_model:
            model, answers = _model(before.get("OPENAI_BASE_URL", ""))
            put |= model
            lines.append(f"Answers come from {answers}.")
    except (ValueError, local_langfuse.CannotStart) as error:
        fail(str(error), 2)
    ours = {name: value for name, value in put.items() if settings[name].source == "default"}
    os.environ |= {**ours, MARK: json.dumps(before | ours)}
    count_spans()
    # A failed export is told once, by `read_trace`; the SDK would tell it three times, and
    # logs each failed model call, which is raised as well.
    logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
    logging.getLogger("langfuse").addFilter(_is_news)
    for line in lines:
        show_line(line)
    if asks_model:
        _name_shut_down(settings["OPENAI_MODEL"].value)


def tracing_is_on() -> bool:
    """Return False when `LANGFUSE_TRACING_ENABLED=false` asks for silence."""
    return choose_destination(read_settings()).mode != "disabled"


def _langfuse(destination: Destination, known: str) -> tuple[dict[str, str], list[str]]:
    """Return what the SDK needs in the environment, and in words where traces go."""
    settings, keys, url = read_settings(), local_langfuse.KEYS, destination.base_url
    more = list[str]()
    if destination.mode == "disabled":
        keys, where = OFF, "Tracing is off and nothing is stored"
    elif destination.mode == "langfuse":
        where = f"Traces go to {url} with {masked(settings['LANGFUSE_PUBLIC_KEY'].value)}"
    else:
        db = TOP / settings["LOCAL_LANGFUSE_DB"].value
        port = int(settings["LOCAL_LANGFUSE_PORT"].value)
        where = f"the file {db.relative_to(TOP) if db.is_relative_to(TOP) else db}"
        if url := local_langfuse.find(db, port, known):
            where = f"Traces go to the local Langfuse stand-in on {url}, {where}"
        else:
            server, holder = local_langfuse.start_inside(db, port)
            url, where = server.base_url, f"Traces go to a local Langfuse stand-in, {where}"
            if holder:
                more.append(f"Port {port} is held by {holder}, so this run has one of its own.")
            again = local_langfuse.command(url, db)
            more.append(f"Links open while this program runs, and later with `{again}`.")
            if sys.stdin.isatty() and sys.stdout.isatty() and not os.environ.get("CI"):
                atexit.register(_keep_links_live, os.getpid())
    put = dict(zip(("LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY"), keys, strict=True))
    if url:
        put["LANGFUSE_BASE_URL"] = url
    return put, [f"{where}, because {destination.why}.", *more]


def _keep_links_live(started_by: int) -> None:
    """Wait at the end of a program in a terminal, since its links end with it."""
    stopped = isinstance(getattr(sys, "last_value", None), KeyboardInterrupt)
    if links and not stopped and os.getpid() == started_by:
        show_line("The links above are live until you press Enter.", "bold")
        with suppress(EOFError, KeyboardInterrupt):
            input()


def _model(known: str) -> tuple[dict[str, str], str]:
    """Return what OpenAI's client needs in the environment, and in words who answers."""
    settings = read_settings()
    name, url = settings["OPENAI_MODEL"].value, settings["OPENAI_BASE_URL"].value
    if url:
        check_url(settings["OPENAI_BASE_URL"])
    if settings["OPENAI_API_KEY"].value or url:
        # A server of your own needs no key, but OpenAI's client does.
        put, label = {"OPENAI_API_KEY": "none"}, f"{name} at {_shown(url)}"
        if urlsplit(url).hostname not in ("127.0.0.1", "localhost"):
            return put, label
        if not local_model.is_running(url):
            return put, label
        why = f"which runs on {_shown(url)}"
    else:
        url = known if known and local_model.is_running(known) else local_model.start().base_url
        put = {"OPENAI_API_KEY": local_model.API_KEY, "OPENAI_BASE_URL": url}
        why = "because no OPENAI_API_KEY is set"
    tokens = "counted where OpenAI's vocabulary is at hand" if is_exact(name) else "estimated"
    return put, (
        f"the local model, priced as {name}, {why}: it repeats sentences from its prompt; "
        f"timings are simulated; tokens are {tokens}"
    )


def _shown(url: str) -> str:
    """Return the address of the model's service, without a user's name and password."""
    parts = urlsplit(url or "https://api.openai.com/v1")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _name_shut_down(model: str) -> None:
    price = price_of(model)
    if price and price.shut_down:
        will = "will be" if price.shut_down > datetime.now(UTC).date() else "was"
        instead = f"; its successor is {price.successor}" if price.successor else ""
        show_line(f"{model} {will} shut down on {price.shut_down}{instead}.", "yellow")


def _reach_loopback_directly() -> None:
    """Keep a proxy out of what stays on this machine; raise `SettingsError` for an unusable one."""
    proxies = [f"{name.upper()}_PROXY" for name in getproxies() if name in ("http", "https", "all")]
    try:
        httpx.Client(verify=False).close()  # noqa: S501  it sends nothing
        if any("socks" in url for url in getproxies().values()):
            import_module("socks")  # what `requests` needs, with which the SDK sends spans
    except (ImportError, ValueError, httpx.InvalidURL):
        raise SettingsError(
            f"{' or '.join(proxies)} cannot be used: a socks5:// proxy needs `pip install socksio "
            "pysocks`, any other an address that begins with http:// or https://."
        ) from None
    for name in ("NO_PROXY", "no_proxy") if proxies else ():
        hosts = filter(None, os.environ.get(name, "").split(","))
        os.environ[name] = ",".join(dict.fromkeys((*hosts, local_langfuse.HOST, "localhost")))


def explain_failure(error: Exception) -> str:
    """Return in one line why a model did not answer, and what to check; without the key."""
    import openai  # noqa: PLC0415  a program that asks no model need not wait for it

    said, key = str(error), os.environ.get("OPENAI_API_KEY", "")
    if isinstance(error, openai.APIConnectionError):
        cause = str(error.__cause__ or error).rstrip(".")
        shown = _shown(os.environ.get("OPENAI_BASE_URL", ""))
        said = f"{shown} cannot be reached: {cause}. Check OPENAI_BASE_URL."
    elif isinstance(error, openai.APIStatusError):
        told = textwrap.shorten(error.message, 300, placeholder=" …")  # a proxy answers with a page
        said = f"{told} Check OPENAI_API_KEY, OPENAI_BASE_URL and OPENAI_MODEL."
    return " ".join((said.replace(key, masked(key)) if len(key) > 4 else said).split())


def _is_news(record: logging.LogRecord) -> bool:
    raised = type(record.msg).__module__.startswith("openai")
    return not (raised or "Failed to send" in str(record.msg))


def _explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Say in one line what a service refused; show any other error in full."""
    if isinstance(error, KeyboardInterrupt):
        fail("Stopped.", 130)
    if isinstance(error, NotStoredError):
        fail(str(error), 1)
    if isinstance(error, httpx.HTTPError | ApiError):  # openai has errors of its own
        fail(loss(error), 1)
    if "openai" in sys.modules:
        import openai  # noqa: PLC0415

        if isinstance(error, openai.APIConnectionError | openai.APIStatusError):
            fail(explain_failure(error), 1)
    sys.__excepthook__(kind, error, trace)
