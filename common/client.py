"""`connect()` finds out where traces go and which model answers, and sets the environment."""

import atexit
import json
import logging
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType

import httpx
from langfuse.api.core import ApiError

import local_langfuse
import local_model
from common.console import fail, links, show_line
from common.errors import explain, without_password
from common.pricing import price_of
from common.readback import count_spans, sent_count
from common.settings import (
    MARK,
    TOP,
    Setting,
    check_url,
    choose_destination,
    masked,
    read_settings,
    set_by_connect,
)

# Without any keys, the SDK logs a warning on every call.
OFF = {"LANGFUSE_PUBLIC_KEY": "pk-lf-off", "LANGFUSE_SECRET_KEY": "sk-lf-off"}
LOCAL = dict(zip(OFF, local_langfuse.KEYS, strict=True))
LABELS = ("LANGFUSE_TRACING_ENVIRONMENT", "LANGFUSE_RELEASE")
MODELS = ("OPENAI_MODEL", "OPENAI_EMBEDDING_MODEL")
Put = dict[str, str]  # what to put into the environment


def connect(*, asks_model: bool = True) -> None:
    """Set the environment so that `Langfuse()` and `OpenAI()` need no arguments, and report it.

    With `LANGFUSE_TRACING_ENABLED=false`, traces go nowhere. With both keys, they go to
    Langfuse. Otherwise they go to a stand-in on this machine: one already running with our
    file, or one started in this process. If neither OPENAI_API_KEY nor OPENAI_BASE_URL is
    set, a local model answers, unless `asks_model` is False. A setting that cannot work ends
    the program with one line on stderr and exit status 2. Calling it twice is harmless.

    It creates no client. It does count what the first client sends, for `show_trace`; it
    silences two loggers that would report errors again; and it sets a `sys.excepthook` that
    prints the errors of both services in one line.
    """
    sys.excepthook = _explain
    before = set_by_connect()  # by an earlier call, or in the process that started this one
    try:
        settings = read_settings()
        if asks_model and settings["OPENAI_BASE_URL"].value:
            check_url(settings["OPENAI_BASE_URL"])  # before anything starts
        local_langfuse.reach_directly()
        put, lines = _langfuse(settings, before.get("LANGFUSE_BASE_URL", ""))
        if asks_model:
            model, said = _model(settings, before.get("OPENAI_BASE_URL", ""))
            put, lines = put | model, [*lines, said]
    except (ValueError, local_langfuse.CannotStart) as error:
        fail(str(error), 2)
    put |= {name: settings[name].value for name in (*LABELS, *MODELS)}
    ours = {name: value for name, value in put.items() if settings[name].source == "default"}
    os.environ |= {**ours, MARK: json.dumps(before | ours)}
    count_spans()
    # `read_trace` reports a failed export once; the SDK would report it three times. It also
    # logs each failed model call, although the call raises its own error.
    logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
    logging.getLogger("langfuse").addFilter(_is_news)
    if put.items() >= OFF.items():  # without a trace, it would warn about each score
        logging.getLogger("langfuse").setLevel(logging.CRITICAL)
    for line in lines:
        show_line(line)
    price = price_of(settings["OPENAI_MODEL"].value)
    if asks_model and price and price.shut_down:
        will = "will be" if price.shut_down > datetime.now(UTC).date() else "was"
        instead = f"; its successor is {price.successor}" if price.successor else ""
        show_line(f"{price.model} {will} shut down on {price.shut_down}{instead}.", "yellow")


def tracing_is_on() -> bool:
    """Return False when `LANGFUSE_TRACING_ENABLED=false` turns tracing off."""
    return choose_destination(read_settings()).mode != "disabled"


def _langfuse(settings: Mapping[str, Setting], known: str) -> tuple[Put, list[str]]:
    """Return what the SDK needs in the environment, and the lines that say where traces go."""
    mode, why, url = choose_destination(settings)
    if mode == "disabled":
        return OFF, [f"Tracing is off and nothing is stored, because {why}."]
    if mode == "langfuse":
        key = masked(settings["LANGFUSE_PUBLIC_KEY"].value)
        return {"LANGFUSE_BASE_URL": url}, [f"Traces go to {url} with {key}, because {why}."]
    db, port = TOP / settings["LOCAL_LANGFUSE_DB"].value, settings["LOCAL_LANGFUSE_PORT"].value
    file = f"in the file {db.relative_to(TOP) if db.is_relative_to(TOP) else db}, because {why}."
    if url := local_langfuse.find(db, int(port), known):
        lines = [f"Traces go to the local Langfuse stand-in at {url}, {file}"]
    else:
        server, holder = local_langfuse.start_inside(db, int(port))
        url, again = server.base_url, local_langfuse.command(server.base_url, db)
        lines = [f"Traces go to a local Langfuse stand-in, {file}"]
        if holder:
            lines.append(f"Port {port} is in use by {holder}, so this run uses another one.")
        lines.append(f"Links work while this program runs. To open them later: `{again}`.")
        if sys.stdin.isatty() and sys.stdout.isatty() and not os.environ.get("CI"):
            atexit.register(_keep_links_live, os.getpid())
    return {**LOCAL, "LANGFUSE_BASE_URL": url}, lines


def _keep_links_live(started_by: int) -> None:
    """In a terminal, wait before the program ends, because its links end with it."""
    stopped = isinstance(getattr(sys, "last_value", None), KeyboardInterrupt)
    if links and not stopped and os.getpid() == started_by:
        show_line("The links above are live until you press Enter.", "bold")
        with suppress(EOFError, KeyboardInterrupt):
            input()


def _model(settings: Mapping[str, Setting], known: str) -> tuple[Put, str]:
    """Return what OpenAI's client needs in the environment, and the line that says who answers."""
    name, url = settings["OPENAI_MODEL"].value, settings["OPENAI_BASE_URL"].value
    if not (settings["OPENAI_API_KEY"].value or url):
        put = {"OPENAI_API_KEY": local_model.API_KEY}
        put["OPENAI_BASE_URL"] = local_model.find_or_start(known)
        said = f"{local_model.label(name)}, because no OPENAI_API_KEY is set"
    else:
        put = {"OPENAI_API_KEY": "none"}  # a server of your own needs no key, but the client does
        label = local_model.label(name) if local_model.is_running(url) else name
        said = f"{label}, at {without_password(url or 'https://api.openai.com/v1')}"
    return put, f"Answers come from {said}."


def _is_news(record: logging.LogRecord) -> bool:
    return not (isinstance(record.msg, BaseException) or "Failed to send" in str(record.msg))


def _explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Say in one line what a service did wrong; show any other error in full."""
    if isinstance(error, KeyboardInterrupt):
        fail("Stopped.", 130)
    if not (said := explain(error)):
        sys.__excepthook__(kind, error, trace)
    elif isinstance(error, httpx.HTTPError | ApiError) and sent_count():
        fail(f"{said} {sent_count()} observations from this run may be lost.", 1)
    else:
        fail(said, 1)
