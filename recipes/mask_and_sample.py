"""Send traces without the personal data in them, and no more of them than you need.

A trace copies what people type: addresses, card numbers, keys. Langfuse's `mask=` gets the
input, output and metadata of a step, `mask_otel_spans=` all attributes of a span. Neither
reaches an exception and its stack trace, a span's name, or the comment of a score. One
gate before the network reaches all of them.

Run it:

    python -m recipes.mask_and_sample

The traces have this shape:

    answer-question       chain
      look-up-customer    tool
      chat                generation
      write-answer        generation

    greet-visitor         span        a quarter of 400

Try next: take `**gate()` out of `main`, run again, and compare what is stored.

The gate reads text. It does not look into pictures and files, and what your program logs
or sends elsewhere does not pass it. Set PSEUDONYM_KEY in the environment to a long random
text, and a customer keeps the same name from run to run.
"""

import hashlib
import hmac
import json
import math
import os
import re
import secrets
from base64 import b64encode
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import httpx
from langfuse import Langfuse, get_client, observe, propagate_attributes
from langfuse.openai import OpenAI
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from opentelemetry.trace import Link, Status

from common import console
from common.client import connect, tracing_is_on
from common.console import show_answer, show_line, show_result, show_section, show_table
from common.llm import model_name, openai_client
from common.readback import poll, read_trace
from common.retriever import search

QUESTION = (
    "I am ada@example.com, card 4111 1111 1111 1111, phone +31 6 1234 5678. "
    "My key sk-lf-0123456789abcdef does not work. Can I return order A-1042 for 49.90?"
)
SAMPLE_RATE = 0.25  # of all traces, the share that is kept
VISITS = 400
Counts = dict[str, int]  # by environment


# %% 1. Know personal data when you see it
#
# Patterns find what has a form. A name or a street has none, so do not trace where one is
# sure to be. Better one number too many is masked than one too few, but prices, dates and
# order numbers must stay, or the trace is of no use: a card number has a checksum.

KEY = re.compile(r"(?<![\w-])(?:sk|pk)-[\w-]{8,}|(?<![\w-])eyJ[\w-]+\.[\w.-]+", re.ASCII)
BEARER = re.compile(r"\b(bearer[ :=]+)[\w.~+/=-]{12,}", re.ASCII | re.IGNORECASE)
EMAIL = re.compile(r"(?<![\w.%+-])[\w.%+-]+(?:@|%40)(?:[\w-]+\.)+[^\W\d_]{2,}")
CARD = re.compile(  # in one piece, or in groups of 4-4-4-4 or 4-6-5; not the decimals of 0.41111…
    r"(?<!\d)(?<!\d\.)(?:\d{13,19}|\d{4}(?:[ .\xa0-]\d{4}){3}(?:[ .\xa0-]\d{1,3})?"
    r"|\d{4}[ .\xa0-]\d{6}[ .\xa0-]\d{4,5})(?!\d)"
)
ISSUED = re.compile(  # how the numbers of card issuers begin, and how long they are
    r"4\d{12}(?:\d{3}){0,2}|(?:5[1-5]|2[2-7])\d{14}|3[47]\d{13}|3[0689]\d{12}|35\d{14}|6\d{15,18}"
)
PHONE = re.compile(  # what begins with 0 and ends in a letter may be an id in hex
    r"(?<![\w.+-])(?:(?:\+|%2B)[1-9](?:[ ()./-]{0,3}\d){7,13}(?!\d)"  # +49 (0)30 1234-567
    r"|00[1-9](?:[ ()./-]{0,3}\d){7,13}(?!\w)|0\d{9,10}(?!\w)|0\d(?:[ .-]\d{2}){4}(?!\d)"
    r"|(?=(?:\D{0,3}\d){8})\(?0\d{1,5}\)?[ /-]{1,3}\d{3,}(?:[ -]\d{2,})*(?!\d)"  # (030) 1234567
    r"|(?:1[ .-])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[ .-])[2-9]\d{2}[ .-]\d{4}(?!\d))"  # 202-555-0147
)


def mask_patterns(text: str) -> str:
    """`mask_patterns("ada@example.com paid 49.90") -> "[email] paid 49.90"`."""
    text = BEARER.sub(r"\1[key]", KEY.sub("[key]", text))
    text = EMAIL.sub("[email]", text)
    text = CARD.sub(lambda found: "[card]" if is_card(found[0]) else found[0], text)
    return PHONE.sub("[phone]", text)


def is_card(text: str) -> bool:
    """Tell whether digits are a card number: an issuer's, with the right last digit (ISO 7812)."""
    digits = [int(character) for character in text if character.isdigit()]
    doubled = [2 * digit - 9 * (digit > 4) for digit in digits[-2::-2]]
    issued = ISSUED.fullmatch("".join(map(str, digits)))
    return issued is not None and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


# %% 2. Give each person another name, always the same
#
# To follow one customer you need no address, only the same word each time. A hash with a
# key is such a word, and without the key nobody can try out addresses until one fits. A
# session id is replaced where there is personal data in it, and so stays one session.

USERS = ("user.id", "user_id", "userId")  # how the names of such fields end
SESSIONS = ("session.id", "session_id", "sessionId")


@cache
def pseudonym_key() -> bytes:
    """Return the secret of the pseudonyms; without PSEUDONYM_KEY one for this run only."""
    return os.environ.get("PSEUDONYM_KEY", "").encode() or secrets.token_bytes(32)


def pseudonym(text: str, kind: str = "user") -> str:
    """Return `"user-"` and 16 hex digits that only the key leads to (HMAC with SHA-256).

    In Langfuse: Users lists these. To find a customer, compute the pseudonym, and filter.
    """
    return f"{kind}-{hmac.new(pseudonym_key(), text.encode(), hashlib.sha256).hexdigest()[:16]}"


# %% 3. Mask values of any form, and let none through
#
# A span carries JSON as text. A pattern alone would put `[card]` where a number was, which
# is no JSON, and miss an address written with `\\u0040`. So JSON is opened, masked inside
# and closed. Where the masker fails, the value is withheld: a gap can be explained.

WITHHELD = "[withheld: it could not be masked]"


def safe(value: Any, name: str = "") -> Any:
    """Return a value masked, or WITHHELD where that fails. `name` is the field it stands in."""
    try:
        return mask(value, name)
    except Exception:  # noqa: BLE001  whatever it was: what is not masked must not leave
        return WITHHELD


def mask(value: Any, name: str = "") -> Any:
    """Return the value with each text and number in it masked, keys of dicts, too."""
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
    opened = parsed(text)
    if opened is not None:
        masked = mask(opened, name)
        if masked != opened:
            return json.dumps(masked, ensure_ascii=False)
    if name.endswith(USERS):
        return pseudonym(text)
    masked = mask_patterns(text)
    return pseudonym(text, "session") if name.endswith(SESSIONS) and masked != text else masked


def parsed(text: str) -> Any:
    """Return what a JSON object, list or text says, None for any other text."""
    if not text.lstrip().startswith(("{", "[", '"')):
        return None
    try:
        return json.loads(text)
    except ValueError:
        return None


# %% 4. Put one gate before the network
#
# Spans leave through an exporter, all else through an HTTP client, and `Langfuse(...)` takes
# both from you. Spans of other libraries pass the same exporter: those with `gen_ai.*`
# attributes or from a known library are sent, a web framework's are not (span_filter.py).


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


def masked_fields(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return attributes with names and values masked."""
    return {safe(name): safe(value, name) for name, value in (attributes or {}).items()}


@cache
def langfuse_exporter() -> OTLPSpanExporter:
    """Return what Langfuse sends spans with; address and keys are where `connect` leaves them."""
    keys = f"{os.environ['LANGFUSE_PUBLIC_KEY']}:{os.environ['LANGFUSE_SECRET_KEY']}"
    return OTLPSpanExporter(
        endpoint=f"{os.environ['LANGFUSE_BASE_URL']}/api/public/otel/v1/traces",
        headers={
            "Authorization": f"Basic {b64encode(keys.encode()).decode()}",
            "x-langfuse-ingestion-version": "4",  # shown within seconds, not minutes
        },
        timeout=float(os.environ.get("LANGFUSE_TIMEOUT", "5")),
        compression=Compression.Gzip,
    )


class MaskingExporter(SpanExporter):
    """Sends spans to Langfuse, each of them masked."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send masked copies."""
        return langfuse_exporter().export([masked_span(span) for span in spans])


MASKED_PATHS = ("/scores", "/dataset-items")  # not prompts, which are your own text
IDS = ("id", "traceId", "observationId")
HEX_ID = re.compile(r"[0-9a-f]{16}|[0-9a-f]{32}")  # as the SDK makes them


def masked_items(items: Any) -> Any:
    """Return the body of a request masked, but for ids, of which some look like numbers."""
    if isinstance(items, list):
        return [masked_items(item) for item in items]
    if not isinstance(items, dict):
        return safe(items)
    ids = {name: items[name] for name in IDS if HEX_ID.fullmatch(str(items.get(name)))}
    return {**masked_fields(items), **ids}


class MaskingClient(httpx.Client):
    """Sends everything that is no span; masks what people wrote: scores and test cases."""

    def request(self, method: str, url: Any, **content: Any) -> httpx.Response:
        """Send a request, its JSON masked where it goes to one of MASKED_PATHS."""
        if str(url).endswith(MASKED_PATHS):
            content["json"] = masked_items(content.get("json"))
        return super().request(method, url, **content)


def gate() -> dict[str, Any]:
    """Return the two options of `Langfuse(...)` that put the gate in place.

    In Langfuse: search the traces for one of your own addresses. Nothing may be found.
    """
    return {"span_exporter": MaskingExporter(), "httpx_client": MaskingClient()}


# %% 5. Answer a question that is full of personal data
#
# The gate touches only the copy in the trace: the model and the tools read what the
# customer wrote, and tokens and cost are those of the real text.


@observe(name="look-up-customer", as_type="tool")
def look_up_customer(address: str) -> str:
    """Look in vain, and say so in the usual way: with what was looked for in the message.

    In Langfuse: this step is an ERROR. Its message stands in three places: status, event
    and stack trace.
    """
    raise LookupError(f"nobody has the address {address}")


def ask_other_library(question: str) -> None:
    """Act like a library with tracing of its own, which has never heard of Langfuse.

    In Langfuse: select `chat`. OpenTelemetry's own names (`gen_ai.*`) became input and output.
    """
    span = trace.get_tracer("other.library").start_span("chat")
    span.set_attribute("gen_ai.operation.name", "chat")
    span.set_attribute("gen_ai.input.messages", json.dumps([{"role": "user", "content": question}]))
    span.end()


@observe(name="answer-question", as_type="chain", capture_input=False)
def answer_question(client: OpenAI, question: str) -> str:
    """Answer a customer, whom the tool does not know.

    In Langfuse: select `answer-question`. The question can still be read and understood.
    """
    get_client().update_current_span(input=question, metadata={"asked_by": "ada@example.com"})
    found = EMAIL.search(question)
    try:
        look_up_customer(found[0] if found else "")
    except LookupError:
        ask_other_library(question)
    passages = "\n".join(passage.text for passage in search(question, 2))
    response = client.chat.completions.create(
        name="write-answer",
        model=model_name(),
        messages=[
            {"role": "system", "content": f"Answer from these passages:\n{passages}"},
            {"role": "user", "content": question},
        ],
    )
    return response.choices[0].message.content or ""


# %% 6. Keep a share of the traces, and count honestly
#
# Sampling saves money, and every count is then an estimate: divide it by the rate, and say
# how far it may be off. Whether a trace is kept is decided by its id alone, so all of it is
# kept or nothing, scores included, in each service that uses the same rate.


def is_kept(trace_id: str, rate: float) -> bool:
    """Tell whether a trace is kept: the rule of OpenTelemetry's TraceIdRatioBased sampler."""
    return int(trace_id[16:], 16) < TraceIdRatioBased.get_bound_for_rate(rate)


def kept_trace_id(langfuse: Langfuse, rate: float) -> str:
    """Return a new trace id that is kept, for the one you must see; leave it out of counts."""
    trace_id = langfuse.create_trace_id()
    while not is_kept(trace_id, rate):
        trace_id = langfuse.create_trace_id()
    return trace_id


def greet_visitors(langfuse: Langfuse, count: int, run: str) -> tuple[Counts, int]:
    """Trace and score many small requests; return how many by environment, and how many are kept.

    In Langfuse: the environment is a filter above every table and dashboard, so what is
    tried out never counts as customers. `span.score` gives a score its span's environment.
    """
    made, kept = {"production": 0, "staging": 0}, 0
    for number in range(count):
        environment = "staging" if number % 4 == 0 else "production"
        with (
            propagate_attributes(environment=environment, metadata={"run": run}),
            langfuse.start_as_current_observation(name="greet-visitor", input=number) as span,
        ):
            span.update(output="Welcome")
            span.score(name="stayed", value=1, metadata={"run": run})
        made[environment] += 1
        kept += is_kept(span.trace_id, SAMPLE_RATE)
    return made, kept


def count_stored(langfuse: Langfuse, view: str, run: str, kept: int) -> Counts:
    """Return how many rows of a view are of this run, as soon as all that were kept are stored."""
    now = datetime.now(UTC)
    in_run = {"type": "stringObject", "column": "metadata", "key": "run", "operator": "="}
    query = {
        "view": view,
        "metrics": [{"measure": "count", "aggregation": "count"}],
        "dimensions": [{"field": "environment"}],
        "filters": [{**in_run, "value": run}],
        "fromTimestamp": (now - timedelta(days=1)).isoformat(),
        "toTimestamp": (now + timedelta(minutes=1)).isoformat(),
    }

    def read() -> Counts:
        rows = langfuse.api.metrics.metrics(query=json.dumps(query)).data
        return {row["environment"]: int(row["count_count"]) for row in rows}

    return poll(read, until=lambda counts: sum(counts.values()) >= kept)


def estimate(stored: int, rate: float) -> tuple[int, int]:
    """Return how many there were, and by how much 19 of 20 such estimates are off at most.

    Two standard errors of a count that is kept with this rate: `estimate(100, 0.25) -> (400, 69)`.
    """
    return round(stored / rate), round(2 * math.sqrt(stored * (1 - rate)) / rate)


def stored_texts(langfuse: Langfuse, trace_id: str) -> list[tuple[str, str]]:
    """Return what is stored of a trace, field by field, as it was read back."""
    nodes = read_trace(langfuse, trace_id)
    root = nodes[0]
    rows = [("user", root.user_id), ("session", root.session_id), ("tags", root.tags)]
    for node in nodes:
        texts = {"input": node.input, "message": node.status_message}
        rows += [(f"{node.name}: {field}", text) for field, text in texts.items() if text]
    scores = poll(
        lambda: langfuse.api.scores.get_many(trace_id=trace_id, fields="details").data, until=bool
    )
    rows += [("score: comment", score.comment) for score in scores]
    return [(where, str(text)) for where, text in rows]


def show_visits(langfuse: Langfuse, run: str, made: Counts, kept: int) -> None:
    """Print what was made, what is stored of it, and what one can tell from that."""
    with console.waiting("Counting what is stored"):
        visits = count_stored(langfuse, "observations", run, kept)
        scores = count_stored(langfuse, "scores-numeric", run, kept)
    rows = []
    for environment, count in made.items():
        stored = visits.get(environment, 0)
        there_were, off = estimate(stored, SAMPLE_RATE)
        numbers = count, stored, scores.get(environment, 0), f"{there_were} ± {off}"
        rows.append((environment, *numbers))
    show_table(("environment", "made", "stored", "scores stored", "estimate of made"), rows)
    show_line(f"  A stored trace stands for {1 / SAMPLE_RATE:g}, roughly; a score does, too.")


def main() -> None:
    """One question full of personal data, many visits, and what is stored of both."""
    langfuse = connect(sample_rate=SAMPLE_RATE, **gate())
    trace_id, run = kept_trace_id(langfuse, SAMPLE_RATE), langfuse.create_trace_id()[:8]
    show_section("A question full of personal data")
    with propagate_attributes(
        user_id="ada@example.com",
        session_id="chat-of-ada@example.com",
        tags=["from:ada@example.com", "channel:web"],
    ):
        answer = answer_question(openai_client(), QUESTION, langfuse_trace_id=trace_id)
    comment = "Call me back: +31 6 1234 5678"
    langfuse.create_score(trace_id=trace_id, name="was-helpful", value=0, comment=comment)
    show_answer(QUESTION, answer)

    show_section(f"{VISITS} visits, of which {SAMPLE_RATE:.0%} are to be kept")
    made, kept = greet_visitors(langfuse, VISITS, run)
    for environment, count in made.items():
        show_result(environment, f"{count} visits")
    langfuse.flush()  # hand over what is waiting before anyone looks
    if not tracing_is_on():
        show_line("  Nothing is stored: tracing is off.")
        return
    show_section("What is stored of the visits")
    show_visits(langfuse, run, made, kept)
    show_section("What is stored of the question")
    show_table(("where", "stored"), stored_texts(langfuse, trace_id))
    console.show_trace(langfuse, trace_id)


if __name__ == "__main__":
    main()
