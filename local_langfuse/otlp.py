"""From OpenTelemetry's wire format to rows of the table `observations`.

A span carries what the SDK knows as attributes named `langfuse.…`; other libraries' spans
carry `gen_ai.…`. A span that cannot be stored is reported; the rest of its batch is kept.
"""

import base64
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from google.protobuf import json_format  # type: ignore[import-untyped]  # it ships no types
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from local_langfuse.models import Tariffs, amounts
from local_langfuse.store import Row
from local_langfuse.wire import Refused, check, decoded, microseconds, parse, storable, to_json

OBSERVATION = "langfuse.observation."
EXPERIMENT = "langfuse.experiment."
METADATA = ("langfuse.trace.metadata", "langfuse.observation.metadata")
LEVELS = ("DEBUG", "DEFAULT", "WARNING", "ERROR")
TYPES = (
    *("SPAN", "GENERATION", "EVENT", "AGENT", "TOOL", "CHAIN"),
    *("RETRIEVER", "EVALUATOR", "EMBEDDING", "GUARDRAIL"),
)
OPERATIONS = {  # `gen_ai.operation.name` in other libraries' spans
    "chat": "GENERATION",
    "text_completion": "GENERATION",
    "generate_content": "GENERATION",
    "embeddings": "EMBEDDING",
    "execute_tool": "TOOL",
    "invoke_agent": "AGENT",
    "create_agent": "AGENT",
}
INPUT = (f"{OBSERVATION}input", "gen_ai.input.messages", "gen_ai.prompt")
OUTPUT = (f"{OBSERVATION}output", "gen_ai.output.messages", "gen_ai.completion")
ELSEWHERE = {"user.id", "session.id", *INPUT, *OUTPUT}  # these have columns of their own

Attributes = dict[str, Any]
Parts = tuple[Span, Attributes, Attributes]  # a span, its scope, its resource


def read_spans(body: bytes, tariffs: Tariffs, *, is_json: bool) -> tuple[list[Row], list[str]]:
    """Return the rows of an OTLP request, and the reason for each span that was refused."""
    rows, reasons = [], []
    for make in _from_json(body) if is_json else _from_protobuf(body):
        try:
            rows.append(_row(*make(), tariffs))
        except Refused as error:
            reasons.append(str(error)[:300])
    return rows, reasons


def _from_protobuf(body: bytes) -> Iterator[Callable[[], Parts]]:
    try:
        request = ExportTraceServiceRequest.FromString(body)
    except DecodeError:
        raise Refused("Failed to parse OTel Protobuf Trace") from None
    for group in request.resource_spans:
        resource = _attributes(group.resource.attributes)
        for scoped in group.scope_spans:
            scope = _scope(scoped.scope)
            for span in scoped.spans:
                yield partial(_parts, span, scope, resource)


def _from_json(body: bytes) -> Iterator[Callable[[], Parts]]:
    # One span at a time, so that a bad one does not take the others with it.
    for group in _list_in(parse(body), "resourceSpans"):
        for scoped in _list_in(group, "scopeSpans"):
            for span in _list_in(scoped, "spans"):
                yield partial(_parts_of_json, span, scoped.get("scope"), group.get("resource"))


def _parts(span: Span, scope: Attributes, resource: Attributes) -> Parts:
    return span, scope, resource


def _parts_of_json(span: Any, scope: Any, resource: Any) -> Parts:
    return (
        _message(_with_bytes(span), Span()),
        _scope(_message(scope or {}, InstrumentationScope())),
        _attributes(_message(resource or {}, Resource()).attributes),
    )


def _list_in(value: Any, key: str) -> list[Any]:
    found = value.get(key) or [] if isinstance(value, dict) else None
    if not isinstance(found, list):
        raise Refused(f"an OTLP request needs a list called {key}")
    return found


def _message(value: Any, empty: Any) -> Any:
    if not isinstance(value, dict):  # a string would be read as a list of unknown fields
        raise Refused("span, scope and resource must be JSON objects")
    try:
        return json_format.ParseDict(check(value), empty, ignore_unknown_fields=True)
    except (json_format.ParseError, TypeError, AttributeError) as error:
        raise Refused(str(error)) from None


def _with_bytes(span: Any) -> Any:
    # OTLP's JSON writes ids as hex, while protobuf's own JSON uses base64.
    if not isinstance(span, dict):
        return span
    ids = {key: span[key] for key in ("traceId", "spanId", "parentSpanId") if span.get(key)}
    try:
        hexed = {k: base64.b64encode(bytes.fromhex(v)).decode() for k, v in ids.items()}
    except (TypeError, ValueError):
        raise Refused("ids of traces and spans must be hex strings") from None
    return {**{k: v for k, v in span.items() if k != "links"}, **hexed}


def _scope(scope: Any) -> Attributes:
    own = {f"attributes.{key}": value for key, value in _attributes(scope.attributes).items()}
    return {**own, "name": scope.name, "version": scope.version}


def _attributes(pairs: Any) -> Attributes:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return _attributes(value.kvlist_value.values)
    if kind == "bytes_value":
        return base64.b64encode(value.bytes_value).decode()
    if kind == "double_value" and not math.isfinite(value.double_value):
        return str(value.double_value)  # JSON has no NaN
    return getattr(value, kind) if kind else None


def _row(span: Span, scope: Attributes, resource: Attributes, tariffs: Tariffs) -> Row:
    own = _attributes(span.attributes)
    everywhere = {**resource, **own}
    row = {
        **_place(span, own),
        **_story(span, own),
        "version": _text(own, "langfuse.version"),
        "environment": _text(everywhere, "langfuse.environment", "deployment.environment.name")
        or "default",
        "release": _text(everywhere, "langfuse.release"),
        "user_id": _text(own, "user.id"),
        "session_id": _text(own, "session.id"),
        "tags": to_json(_tags(own.get("langfuse.trace.tags"))),
        "metadata": to_json(_metadata(own, scope, resource)),
        **_generation(span, own, tariffs),
        **_experiment(own),
    }
    if not storable(list(row.values())):
        raise Refused("a number does not fit into 64 bits")
    return row


def _place(span: Span, own: Attributes) -> Row:
    # In OpenTelemetry, an id of zeros means "no id".
    if len(span.trace_id) != 16 or not any(span.trace_id):
        raise Refused("a trace id must be 16 bytes, not all zero")
    if len(span.span_id) != 8 or not any(span.span_id):
        raise Refused("a span id must be 8 bytes, not all zero")
    if not span.start_time_unix_nano:
        raise Refused("a span needs a start time")
    parent = span.parent_span_id.hex() or None
    is_root = parent is None or own.get("langfuse.internal.is_app_root") is True
    own_name = span.name if is_root else None
    return {
        "trace_id": span.trace_id.hex(),
        "id": span.span_id.hex(),
        "parent_id": parent,
        "is_root": is_root,
        "name": span.name,
        "trace_name": _text(own, "langfuse.trace.name") or own_name,
        "start_us": span.start_time_unix_nano // 1000,
        "end_us": span.end_time_unix_nano // 1000 or None,
    }


def _story(span: Span, own: Attributes) -> Row:
    failed = span.status.code == Status.STATUS_CODE_ERROR
    level = _text(own, f"{OBSERVATION}level").upper()
    return {
        "type": _type(own),
        "level": level if level in LEVELS else "ERROR" if failed else "DEFAULT",
        "status_message": _text(own, f"{OBSERVATION}status_message") or span.status.message,
        "input": _text(own, *INPUT) if any(key in own for key in INPUT) else None,
        "output": _text(own, *OUTPUT) if any(key in own for key in OUTPUT) else None,
    }


def _type(own: Attributes) -> str:
    given = _text(own, f"{OBSERVATION}type").upper()
    guess = OPERATIONS.get(_text(own, "gen_ai.operation.name"), "SPAN")
    return given if given in TYPES else guess


def _generation(span: Span, own: Attributes, tariffs: Tariffs) -> Row:
    start_us = span.start_time_unix_nano // 1000
    model = _text(own, f"{OBSERVATION}model.name", "gen_ai.response.model", "gen_ai.request.model")
    tariff = tariffs.of(model, start_us) if model else None
    usage = decoded(own.get(f"{OBSERVATION}usage_details")) or _foreign_usage(own)
    # A propagated prompt is on every span, but only generations have a prompt.
    prompted = own if _type(own) == "GENERATION" else {}
    version = decoded(prompted.get(f"{OBSERVATION}prompt.version"))
    parameters = decoded(own.get(f"{OBSERVATION}model.parameters"))
    return {
        "model": model,
        "model_id": tariff.id if tariff else "",
        "model_parameters": to_json(parameters if isinstance(parameters, dict) else {}),
        "completion_start_us": _time(decoded(own.get(f"{OBSERVATION}completion_start_time"))),
        "prompt_name": _text(prompted, f"{OBSERVATION}prompt.name"),
        "prompt_version": version if type(version) is int else None,
        **amounts(usage, decoded(own.get(f"{OBSERVATION}cost_details")), tariff),
    }


def _foreign_usage(own: Attributes) -> Attributes:
    names = {"input": "gen_ai.usage.input_tokens", "output": "gen_ai.usage.output_tokens"}
    return {side: own[name] for side, name in names.items() if type(own.get(name)) is int}


def _experiment(own: Attributes) -> Row:
    found = {k.removeprefix(EXPERIMENT): v for k, v in own.items() if k.startswith(EXPERIMENT)}
    return {
        "experiment": to_json(found) if found else None,
        "experiment_id": _text(found, "id") or None,
    }


def _text(attributes: Attributes, *keys: str) -> str:
    """Return the first of these attributes that is set, as text, or "" if none is."""
    found = next((attributes[key] for key in keys if attributes.get(key) is not None), "")
    return found if isinstance(found, str) else to_json(found)


def _time(value: Any) -> int | None:
    try:
        return microseconds(value, "completion_start_time")
    except Refused:
        return None


def _tags(value: Any) -> list[str]:
    tags = decoded(value)
    return [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []


def _metadata(own: Attributes, scope: Attributes, resource: Attributes) -> Attributes:
    found: Attributes = {}
    for prefix in METADATA:  # the observation's own metadata wins over its trace's
        whole = decoded(own.get(prefix))
        if whole is not None:
            found |= _flat(whole if isinstance(whole, dict) else {"metadata": whole})
        for key, value in own.items():
            if key.startswith(f"{prefix}."):
                found |= _flat({key.removeprefix(f"{prefix}."): decoded(value)})
    rest = {k: v for k, v in own.items() if not k.startswith("langfuse.") and k not in ELSEWHERE}
    for prefix, group in (("attributes", rest), ("scope", scope), ("resourceAttributes", resource)):
        found |= {f"{prefix}.{key}": value for key, value in group.items()}
    return found


def _flat(values: Attributes, prefix: str = "") -> Attributes:
    """Return nested dicts as dotted keys: `{"a": {"b": 1}} -> {"a.b": 1}`."""
    flat: Attributes = {}
    for key, value in values.items():
        nested = isinstance(value, dict) and value
        flat |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat
