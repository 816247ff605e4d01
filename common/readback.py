"""Read a trace back from where it was stored, complete or with a clear word about the loss."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import httpx
from langfuse import Langfuse
from langfuse.api import ObservationV2
from langfuse.api.core import ApiError
from langfuse.span_filter import is_default_export_span
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

FIELDS = "core,basic,time,io,metadata,model,usage,prompt,metrics,trace_context"
T = TypeVar("T")


class NotStoredError(Exception):
    """What was sent cannot be read back; the message says what is lost and what to do."""


class _SentSpans(SpanProcessor):
    """Counts finished spans by trace, so that reading back knows when a trace is complete."""

    def __init__(self) -> None:
        self.by_trace: Counter[str] = Counter()
        self.page_url = ""

    def on_end(self, span: ReadableSpan) -> None:
        if span.context and is_default_export_span(span):
            self.by_trace[f"{span.context.trace_id:032x}"] += 1


_sent = _SentSpans()


def count_spans(page_url: str) -> None:
    """Count from now on what the SDK sends.

    `page_url` is where the links of traces open, when not where they are sent: the
    stand-in inside this process ends with it.
    """
    _sent.page_url = page_url
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):  # with tracing off there is none
        provider.add_span_processor(_sent)


def sent_count(trace_id: str) -> int:
    """Return how many observations of this trace the SDK was given to send."""
    return _sent.by_trace[trace_id]


def poll(read: Callable[[], T], *, until: Callable[[T], bool], seconds: float = 30) -> T:
    """Call `read` until its answer is what you wait for, or `seconds` have passed.

    Langfuse Cloud shows a trace some seconds after it accepted it. Returns the last
    answer, complete or not.
    """
    deadline = time.monotonic() + seconds
    while True:
        answer = read()
        if until(answer) or time.monotonic() > deadline:
            return answer
        threading.Event().wait(0.3)  # as long as a person does not notice


def read_trace(langfuse: Langfuse, trace_id: str, seconds: float = 30) -> list[ObservationV2]:
    """Return all stored observations of a trace, oldest first.

    Raises `NotStoredError` when fewer come back than were sent.
    """
    sent = sent_count(trace_id)

    def read() -> list[ObservationV2]:
        page = langfuse.api.observations.get_many(trace_id=trace_id, fields=FIELDS, limit=1000)
        rows: list[ObservationV2] = page.data
        return rows

    try:
        stored = poll(read, until=lambda rows: len(rows) >= sent, seconds=seconds)
    except (httpx.HTTPError, ApiError) as error:
        raise NotStoredError(loss(error)) from error
    if len(stored) < sent:
        raise NotStoredError(f"Only {len(stored)} of {sent} observations can be read back.")
    return sorted(stored, key=lambda o: (o.start_time, not o.is_root_observation))


def loss(error: httpx.HTTPError | ApiError) -> str:
    """Return in one line what a failed request to Langfuse means for this run."""
    count = sum(_sent.by_trace.values())
    if not isinstance(error, ApiError):
        return (
            f"Not stored: Langfuse cannot be reached ({error}); {count} observations of this "
            "run are lost. Check LANGFUSE_BASE_URL, or unset both keys to stay local."
        )
    check = "both keys" if error.status_code in (401, 403) else "LANGFUSE_BASE_URL"
    return (
        f"Langfuse answered {error.status_code}; {count} observations of this run may be lost. "
        f"Check {check}."
    )


def links_need_server() -> bool:
    """Return True when nothing will answer at a trace's link after this process has ended."""
    return bool(_sent.page_url)


def trace_link(langfuse: Langfuse, trace_id: str) -> str:
    """Return the address at which this trace opens in a browser."""
    url = langfuse.get_trace_url(trace_id=trace_id) or ""
    return _sent.page_url + url[url.index("/project/") :] if _sent.page_url else url
