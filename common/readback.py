"""Read a trace back from where it was stored, and say clearly if part of it is missing."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from langfuse import Langfuse
from langfuse.api import ObservationV2
from langfuse.span_filter import is_default_export_span
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

from common.errors import NotStoredError

FIELDS = "core,basic,time,io,metadata,model,usage,prompt,metrics,trace_context"
REMEMBERED = 10_000  # traces
T = TypeVar("T")


class _SentSpans(SpanProcessor):
    """Counts finished spans per trace, so that `read_trace` knows when a trace is complete."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # spans end in many threads
        self.by_trace: dict[str, int] = {}
        self.total = 0
        self.joined: trace.TracerProvider | None = None

    def on_end(self, span: ReadableSpan) -> None:
        if span.context and is_default_export_span(span):
            trace_id = f"{span.context.trace_id:032x}"
            with self.lock:
                self.by_trace[trace_id] = self.by_trace.pop(trace_id, 0) + 1  # move it to the end
                self.total += 1
                if len(self.by_trace) > REMEMBERED:
                    del self.by_trace[next(iter(self.by_trace))]

    def join(self, provider: trace.TracerProvider) -> None:
        if isinstance(provider, TracerProvider) and provider is not self.joined:
            provider.add_span_processor(self)
            self.joined = provider


_sent = _SentSpans()
_set_provider = trace.set_tracer_provider


def _set_and_join(tracer_provider: trace.TracerProvider) -> None:
    _set_provider(tracer_provider)
    _sent.join(trace.get_tracer_provider())


def count_spans() -> None:
    """Count what the SDK sends, starting with the first client.

    The first `Langfuse()` sets the provider that all its spans go through. Setting one here
    first would turn off its sampling, so this joins the client's own as soon as it is set.
    """
    trace.set_tracer_provider = _set_and_join
    _sent.join(trace.get_tracer_provider())


def sent_count(trace_id: str = "") -> int:
    """Return how many observations the SDK was given to send, for one trace or for all."""
    return _sent.by_trace.get(trace_id, 0) if trace_id else _sent.total


def last_trace_id() -> str:
    """Return the id of the trace whose observation ended last, or "" if there is none."""
    return next(reversed(_sent.by_trace), "")


def poll(read: Callable[[], T], *, until: Callable[[T], bool], seconds: float = 25) -> T:
    """Call `read` until its answer is what you wait for, or `seconds` have passed.

    Langfuse Cloud shows a trace a few seconds after accepting it. Returns the last
    answer, complete or not.
    """
    deadline = time.monotonic() + seconds
    while True:
        answer = read()
        if until(answer) or time.monotonic() > deadline:
            return answer
        threading.Event().wait(0.3)  # too short for anyone to notice


def read_trace(langfuse: Langfuse, trace_id: str, seconds: float = 25) -> list[ObservationV2]:
    """Return all stored observations of a trace, oldest first.

    Raises `NotStoredError` when fewer come back than were sent.
    """
    sent = sent_count(trace_id)

    def read() -> list[ObservationV2]:
        get = langfuse.api.observations.get_many
        return list(get(trace_id=trace_id, fields=FIELDS, limit=1000).data)

    stored = poll(read, until=lambda rows: len(rows) >= sent, seconds=seconds)
    if len(stored) < sent:
        raise NotStoredError(
            f"Only {len(stored)} of {sent} observations can be read back: try again later, or "
            "run `python -m recipes.check_connection`."
        )
    return sorted(stored, key=lambda o: (o.start_time, not o.is_root_observation))
