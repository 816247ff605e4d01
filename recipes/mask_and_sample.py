"""Keep personal data out of traces, and keep no more traces than you need.

A trace contains what people type: addresses, card numbers, keys. Langfuse's `mask=` sees the
input, output and metadata of a step, and `mask_otel_spans=` all attributes of a span. Neither
sees an exception and its stack trace, a span's name, or the comment of a score. A gate in
front of the network sees all of them.

Run it:

    python -m recipes.mask_and_sample

The traces have this shape:

    answer-question       chain
      look-up-customer    tool
      write-answer        generation

    greet-visitor         span        a quarter of 400

Try next: take `**gate()` out of `main`, run again, and compare what is stored.

The gate reads text, not pictures or files. It does not see what your program logs or sends
elsewhere.
"""

import hashlib
import hmac
import json
import math
import os
import re
import secrets
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import httpx
from langfuse import Langfuse, LangfuseChain, get_client, observe, propagate_attributes
from langfuse.openai import OpenAI
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from opentelemetry.trace import Link, Status

from common import console
from common.client import connect, tracing_is_on
from common.console import show_answer, show_line, show_result, show_section, show_table
from common.readback import poll, read_trace
from common.retriever import search

ADDRESS = "ada@example.com"
QUESTION = (
    f"I am {ADDRESS}, card 4111 1111 1111 1111, phone +31 6 1234 5678. "
    "My key sk-lf-0123456789abcdef does not work. Can I return order A-1042 for 49.90?"
)
SAMPLE_RATE = 0.25  # the share of traces that is kept
VISITS = {"production": 300, "staging": 100}
VIEWS = {"observations": "greet-visitor", "scores-numeric": "stayed"}  # what to count in each
# Without this key nobody can find a customer by trying addresses. Set one: by default it is
# random, and every run gives a customer another pseudonym.
PSEUDONYM_KEY = os.environ.get("PSEUDONYM_KEY", "").encode() or secrets.token_bytes(32)


# %% 1. Know personal data when you see it
#
# Patterns find what has a fixed form. A name or a street has none, so do not trace a field
# that always holds one. Mask one number too many rather than one too few, but leave prices,
# dates and order numbers, or the trace is useless. Cards can be told apart by their checksum.

KEY = re.compile(
    r"(?<![\w-])(?:sk|pk)-[\w-]{8,}|(?<![\w-])eyJ[\w-]+\.[\w.-]+|(?<=[Bb]earer )[\w.~+/=-]{12,}",
    re.ASCII,
)
EMAIL = re.compile(r"(?<![\w.%+-])[\w.%+-]+(?:@|%40)(?:[\w-]+\.)+[^\W\d_]{2,}")
CARD = re.compile(  # in one piece or in groups; not a time in ms, nor the decimals of 0.41111…
    r"(?<!\d)(?<!\d\.)(?=[3-6]|2[2-7])"
    r"(?:\d{13,19}|\d{4}(?:[ -]\d{4}){3}|\d{4}[ -]\d{6}[ -]\d{5})(?!\d)"
)
PHONE = re.compile(
    r"(?<![\w.+-])(?:(?:\+|%2B)[1-9](?:[ ()./-]{0,3}\d){7,13}(?!\d)"  # +49 (0)30 1234-567
    r"|(?!\d\d[ /-]\d\d[ /-]\d{4})\(?0(?:[ ()/-]{0,2}\d){8,13}(?!\w)"  # 06-12345678, no date
    r"|(?:1[ .-])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[ .-])[2-9]\d{2}[ .-]\d{4}(?!\d))"  # 202-555-0147
)


def mask_patterns(text: str) -> str:
    """`mask_patterns("ada@example.com paid 49.90") -> "[email] paid 49.90"`."""
    text = EMAIL.sub("[email]", KEY.sub("[key]", text))
    text = CARD.sub(lambda found: "[card]" if is_card(found[0]) else found[0], text)
    return PHONE.sub("[phone]", text)


def is_card(text: str) -> bool:
    """Return whether the last digit fits the others, as on every card (Luhn, ISO 7812)."""
    digits = [int(character) for character in text if character.isdigit()]
    doubled = [2 * digit - 9 * (digit > 4) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


# %% 2. Mask values of any form, and let none through
#
# A span carries JSON as text. A pattern alone would put `[card]` in place of a number, which
# breaks the JSON, and miss an address written with `\u0040`. So JSON is parsed, masked and
# written again. A user or a session gets a pseudonym, always the same one, so that you can
# still follow a customer. If masking fails, the value is withheld: better a gap than a leak.

WITHHELD = "[withheld: it could not be masked]"
NAMES_OF_IDS = ("user.id", "user_id", "userId", "session.id", "session_id", "sessionId")


def safe(value: Any, name: str = "") -> Any:
    """Return the masked value, or WITHHELD if masking fails. `name` is the field it is in."""
    try:
        return mask(value, name)
    except Exception:  # noqa: BLE001  whatever went wrong, an unmasked value must not leave
        return WITHHELD


def mask(value: Any, name: str = "") -> Any:
    """Mask every text and every number in a value, and the keys of its dicts."""
    if isinstance(value, str):
        return mask_text(value, name)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        masked = mask_text(str(value), name)
        return value if masked == str(value) else masked
    if isinstance(value, Mapping):
        return {mask_text(str(key)): mask(item, str(key)) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [mask(item, name) for item in value]
    raise TypeError(f"cannot look into {type(value)}")


def mask_text(text: str, name: str = "") -> str:
    """`mask_text('{"card": 4111111111111111}') -> '{"card": "[card]"}'`."""
    try:
        opened = json.loads(text) if text.lstrip().startswith(("{", "[", '"')) else None
    except ValueError:  # it only looked like JSON
        opened = None
    masked = mask(opened, name)
    if masked != opened:
        return json.dumps(masked, ensure_ascii=False)
    return pseudonym(text) if name.endswith(NAMES_OF_IDS) else mask_patterns(text)


def pseudonym(text: str) -> str:
    """Return `"anon-"` and 16 hex digits: always the same for one text, with no way back.

    In Langfuse: Users lists the pseudonyms. To find a customer, compute theirs.
    """
    return f"anon-{hmac.new(PSEUDONYM_KEY, text.encode(), hashlib.sha256).hexdigest()[:16]}"


# %% 3. Put one gate in front of the network
#
# Spans leave through an exporter, everything else through an HTTP client, and `Langfuse(...)`
# accepts your own of both. Spans of other libraries take the same exporter: those of a known
# LLM library or with `gen_ai.*` attributes are sent, those of a web framework are not
# (`langfuse/span_filter.py`).


def masked_fields(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    """Mask the names and the values of attributes."""
    return {safe(name): safe(value, name) for name, value in (attributes or {}).items()}


def masked_span(span: ReadableSpan) -> ReadableSpan:
    """Return a copy of a finished span in which every text is masked; ids and times stay."""
    description = span.status.description
    events = [Event(safe(e.name), masked_fields(e.attributes), e.timestamp) for e in span.events]
    return ReadableSpan(
        name=safe(span.name),
        context=span.context,
        parent=span.parent,
        resource=Resource(masked_fields(span.resource.attributes)),
        attributes=masked_fields(span.attributes),
        events=events,
        links=[Link(link.context, masked_fields(link.attributes)) for link in span.links],
        kind=span.kind,
        instrumentation_scope=span.instrumentation_scope,
        status=Status(span.status.status_code, description and safe(description)),
        start_time=span.start_time,
        end_time=span.end_time,
    )


@cache
def langfuse_exporter() -> OTLPSpanExporter:
    """Return an exporter to Langfuse; address and keys come from the environment."""
    keys = f"{os.environ['LANGFUSE_PUBLIC_KEY']}:{os.environ['LANGFUSE_SECRET_KEY']}"
    return OTLPSpanExporter(
        endpoint=f"{os.environ['LANGFUSE_BASE_URL']}/api/public/otel/v1/traces",
        headers={
            "Authorization": f"Basic {b64encode(keys.encode()).decode()}",
            "x-langfuse-ingestion-version": "4",  # shown within seconds, not minutes
        },
        timeout=float(os.environ.get("LANGFUSE_TIMEOUT", "5")),
    )


class MaskingExporter(SpanExporter):
    """Masks spans before it sends them to Langfuse."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send masked copies."""
        return langfuse_exporter().export([masked_span(span) for span in spans])


def masked_body(body: Any) -> Any:
    """Mask the body of a request, except its ids: some look like a card number."""
    if isinstance(body, list):
        return [masked_body(item) for item in body]
    found = {name: str(body.get(name)) for name in ("id", "traceId", "observationId")}
    ids = {name: i for name, i in found.items() if re.fullmatch("([0-9a-f]{16}){1,2}", i)}
    return {**masked_fields(body), **ids}


class MaskingClient(httpx.Client):
    """Masks everything else before it sends it, such as scores."""

    def request(self, method: str, url: Any, **content: Any) -> httpx.Response:
        """Mask the JSON of a request, except prompts, which are your own text."""
        if content.get("json") and "/prompts" not in str(url):
            content["json"] = masked_body(content["json"])
        return super().request(method, url, **content)


def gate() -> dict[str, Any]:
    """Return the two options of `Langfuse(...)` that put the gate in place.

    In Langfuse: open `answer-question` and select each step. None shows an address, a card
    number, a phone number or a key.
    """
    return {"span_exporter": MaskingExporter(), "httpx_client": MaskingClient()}


# %% 4. Answer a question that is full of personal data
#
# The gate changes only the copy in the trace. The model and the tools still read what the
# customer wrote, and tokens and cost are those of the original text.


@observe(name="look-up-customer", as_type="tool")
def look_up_customer(address: str) -> str:
    """Find nobody, and say so as most code does: with the address in the error's message.

    In Langfuse: select `look-up-customer`. Its level is ERROR, and the address is masked in
    its status message, too.
    """
    raise LookupError(f"nobody has the address {address}")


def answer_question(client: OpenAI, question: str) -> tuple[str, str]:
    """Answer a customer whom the tool does not know; return the answer and the trace's id.

    In Langfuse: select `answer-question`. The masked question can still be understood.

    In your own app, open the root with `start_as_current_observation`: `kept_root` is here
    only so that you always have a trace to look at.
    """
    with kept_root("answer-question") as root:
        root.update(input=question, metadata={"asked_by": ADDRESS})
        with suppress(LookupError):
            look_up_customer(ADDRESS)
        passages = "\n".join(passage.text for passage in search(question, 2))
        prompt = f"Answer from these passages:\n{passages}\n\nQuestion: {question}"
        response = client.chat.completions.create(
            name="write-answer",
            model=os.environ["OPENAI_MODEL"],
            messages=[{"role": "user", "content": prompt}],
            max_completion_tokens=500,
        )
        answer = response.choices[0].message.content or ""
        root.update(output=answer)
    return answer, root.trace_id


# %% 5. Keep a share of the traces, and count honestly
#
# Sampling saves money and turns every count into an estimate: divide it by the rate, and say
# how far off it may be (the number after the ± holds in 19 of 20 cases). The id of a trace
# alone decides whether it is kept. So you keep all of a trace or nothing, scores included, in
# every service that uses the same rate.


def is_kept(trace_id: str, rate: float) -> bool:
    """Return whether a trace is kept, by the rule of OpenTelemetry's TraceIdRatioBased."""
    return int(trace_id[16:], 16) < TraceIdRatioBased.get_bound_for_rate(rate)


@contextmanager
def kept_root(name: str) -> Iterator[LangfuseChain]:
    """Begin traces until one is kept, so that there is one to look at; the others stay unsent."""
    while True:
        with get_client().start_as_current_observation(name=name, as_type="chain") as root:
            if is_kept(root.trace_id, SAMPLE_RATE):
                yield root
                return


def greet_visitors(langfuse: Langfuse, environment: str, count: int) -> int:
    """Trace and score many small requests; return how many of them are kept.

    In Langfuse: filter Tracing by Environment to see customers without your own trials.
    `span.score` gives a score the environment of its span.
    """
    kept = 0
    for number in range(count):
        with (
            propagate_attributes(environment=environment),
            langfuse.start_as_current_observation(name="greet-visitor", input=number) as span,
        ):
            span.update(output="Welcome")
            span.score(name="stayed", value=1)
        kept += is_kept(span.trace_id, SAMPLE_RATE)
    return kept


def count_stored(langfuse: Langfuse, view: str, since: datetime, kept: int) -> dict[str, int]:
    """Wait until all kept visits, or scores, are stored; return how many per environment."""
    query = {
        "view": view,
        "metrics": [{"measure": "count", "aggregation": "count"}],
        "dimensions": [{"field": "environment"}],
        "filters": [{"type": "string", "column": "name", "operator": "=", "value": VIEWS[view]}],
        "fromTimestamp": since.isoformat(),
        "toTimestamp": (since + timedelta(days=1)).isoformat(),
    }

    def read() -> dict[str, int]:
        rows = langfuse.api.metrics.metrics(query=json.dumps(query)).data
        return {row["environment"]: int(row["count_count"]) for row in rows}

    return poll(read, until=lambda counts: sum(counts.values()) >= kept)


def show_visits(langfuse: Langfuse, since: datetime, kept: int) -> None:
    """Print for each environment what was made, what is stored, and the estimate from that."""
    visits = count_stored(langfuse, "observations", since, kept)
    scores = count_stored(langfuse, "scores-numeric", since, kept)
    rows = []
    for environment, made in VISITS.items():
        stored = visits.get(environment, 0)
        off = 2 * math.sqrt(stored * (1 - SAMPLE_RATE)) / SAMPLE_RATE  # two standard errors
        estimate = f"{stored / SAMPLE_RATE:.0f} ± {off:.0f}"
        rows.append((environment, made, stored, scores.get(environment, 0), estimate))
    show_table(("environment", "made", "stored", "scores stored", "estimate"), rows)


def main() -> None:
    """Ask a question full of personal data, greet many visitors, and show what is stored."""
    connect()
    langfuse = Langfuse(sample_rate=SAMPLE_RATE, **gate())
    show_section("A question full of personal data")
    with propagate_attributes(user_id=ADDRESS, tags=[f"from:{ADDRESS}", "channel:web"]):
        answer, trace_id = answer_question(OpenAI(timeout=60), QUESTION)
    show_answer(QUESTION, answer)

    show_section(f"Many visits, of which about {SAMPLE_RATE:.0%} are kept")
    since = datetime.now(UTC)
    kept = sum(greet_visitors(langfuse, *visits) for visits in VISITS.items())
    langfuse.flush()  # send what is waiting before anyone looks
    if not tracing_is_on():
        show_line("  Nothing is stored: tracing is off.")
        return
    show_visits(langfuse, since, kept)
    show_section("How the question is stored")
    root = read_trace(langfuse, trace_id)[0]
    for label, text in (("user", root.user_id), ("tags", root.tags), ("input", root.input)):
        show_result(label, text)
    console.show_trace(trace_id)


if __name__ == "__main__":
    main()
