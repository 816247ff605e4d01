"""One Langfuse client for every script: `connect()` finds out where traces go, and says why."""

import logging
import os
import sys
from types import TracebackType
from typing import Any

import httpx
import openai
from langfuse import Langfuse
from langfuse.api.core import ApiError

import local_langfuse
from common.console import fail, show_line
from common.llm import explain_failure, model_label
from common.readback import NotStoredError, count_spans, links_need_server, loss
from common.settings import (
    TOP,
    Destination,
    choose_destination,
    masked,
    read_settings,
)


def connect(*, asks_model: bool = True, **options: Any) -> Langfuse:
    """Return the Langfuse client for the settings found, and print where traces go.

    A program that asks no model says so, and is not told which one would answer. Options
    such as `mask=` or `sample_rate=` go to `Langfuse(...)` as they are.

    Off with `LANGFUSE_TRACING_ENABLED=false`; to Langfuse with both keys; otherwise to
    the local stand-in, started inside this process unless one is already running.
    A setting that cannot work ends the program: one line on stderr, exit status 2.

    Beside that it leaves the keys and the address in force in the environment, where any
    other library looks for them; silences two loggers that would tell an error twice; and
    has errors of the model's service and of Langfuse told in one line.
    """
    sys.excepthook = _explain
    try:
        settings = read_settings()
        destination = choose_destination(settings)
        answers = model_label() if asks_model else ""
        langfuse, where = _open(destination, options)
    except (ValueError, local_langfuse.CannotStart) as error:
        fail(str(error), 2)
    show_line(f"{where}, because {destination.why}.")
    if asks_model:
        show_line(f"Answers come from {answers}.")
    if links_need_server():
        python = os.path.relpath(sys.executable)
        show_line(f"Links open in a browser while `{python} -m local_langfuse` is running.")
    return langfuse


def tracing_is_on() -> bool:
    """Return False when `LANGFUSE_TRACING_ENABLED=false` asks for silence."""
    return choose_destination(read_settings()).mode != "disabled"


def _open(destination: Destination, options: dict[str, Any]) -> tuple[Langfuse, str]:
    """Return the client, and in words where its traces go."""
    settings = read_settings()
    # With no key at all the SDK logs a warning at every call, also with tracing off.
    public_key, secret_key, page_url = "pk-lf-off", "sk-lf-off", ""
    where = "Tracing is off and nothing is stored"
    if destination.mode == "langfuse":
        public_key = settings["LANGFUSE_PUBLIC_KEY"].value
        secret_key = settings["LANGFUSE_SECRET_KEY"].value
        os.environ["LANGFUSE_BASE_URL"] = destination.base_url
        where = f"Traces go to {destination.base_url} with {masked(public_key)}"
    elif destination.mode == "local":
        public_key, secret_key = local_langfuse.PUBLIC_KEY, local_langfuse.SECRET_KEY
        os.environ["LANGFUSE_BASE_URL"], page_url, where = _local()
    # The environment now says what is in force, to this client and to any other library.
    os.environ |= {"LANGFUSE_PUBLIC_KEY": public_key, "LANGFUSE_SECRET_KEY": secret_key}
    named = {
        "environment": settings["LANGFUSE_TRACING_ENVIRONMENT"].value,
        "release": settings["LANGFUSE_RELEASE"].value,
    }
    langfuse = Langfuse(**{**named, **options})
    count_spans(page_url)
    # A failed export is told once, by `read_trace`; the SDK would tell it three times, and
    # logs each failed model call, which is raised as well.
    logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
    logging.getLogger("langfuse").addFilter(_is_news)
    return langfuse, where


def _is_news(record: logging.LogRecord) -> bool:
    told = isinstance(record.msg, openai.OpenAIError) or "Failed to send" in str(record.msg)
    return not told


def _local() -> tuple[str, str, str]:
    """Return the base URL of the local stand-in, where its links open, and a sentence."""
    settings = read_settings()
    port = int(settings["LOCAL_LANGFUSE_PORT"].value)
    page_url = f"http://127.0.0.1:{port}"
    # A proxy meant for the internet must not be asked for this machine.
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1")))
    if file := local_langfuse.running_file(port):
        return page_url, "", f"Traces go to the local Langfuse stand-in on {page_url} ({file})"
    db = TOP / settings["LOCAL_LANGFUSE_DB"].value
    server = local_langfuse.start(db)
    shown = db.relative_to(TOP) if db.is_relative_to(TOP) else db
    return server.base_url, page_url, f"Traces go to a local Langfuse stand-in, the file {shown}"


def _explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Say in one line what a service refused; show any other error in full."""
    if isinstance(error, KeyboardInterrupt):
        fail("Stopped.", 130)
    if isinstance(error, NotStoredError):
        fail(str(error), 1)
    if isinstance(error, httpx.HTTPError | ApiError):  # openai has errors of its own
        fail(loss(error), 1)
    if isinstance(error, openai.APIConnectionError | openai.APIStatusError):
        fail(explain_failure(error), 1)
    sys.__excepthook__(kind, error, trace)
