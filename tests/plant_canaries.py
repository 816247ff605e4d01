"""Traces with a canary in each place from which text can leave; run by the test of the masker.

`plant_canaries.py none=URL langfuse=URL gate=URL` says who masks what is sent to an address:
nobody, Langfuse's own two hooks around the recipe's masker, or the recipe's gate. Each has a
process of its own, forked so that all share what takes long, the imports. The last line that
each prints is JSON: every place, and what to look for.
"""

import json
import os
import sys
from contextlib import suppress
from typing import Any

import openai
from langfuse import Langfuse, get_client, observe, propagate_attributes
from langfuse.openai import OpenAI
from langfuse.types import MaskOtelSpansParams, MaskOtelSpansResult, OtelSpanPatch
from opentelemetry import trace

from common.client import connect
from recipes import mask_and_sample as recipe

ESCAPE = chr(92) + "u0040"
planted: dict[str, dict[str, str]] = {}


def card(number: int) -> str:
    """Return a card number of its own for each place: 15 digits and the one that fits."""
    digits = f"4111111{number:08}"
    return next(f"{digits}{last}" for last in range(10) if recipe.is_card(f"{digits}{last}"))


def canary(place: str, *kinds: str) -> str:
    """Return a text with personal data that is in no other place, and note what to look for."""
    number = len(planted)
    mine = {
        "email": f"ada.{number:04}@example.com",
        "card": card(number),
        "phone": f"+31 6 1234 {number:04}",
        "key": f"sk-lf-canary-{number:04}",
        "public": f"pk-lf-canary-{number:04}",
        "token": f"Bearer canary.{number:04}.abcdef",
    }
    planted[place] = {kind: text for kind, text in mine.items() if kind in (kinds or mine)}
    return " and ".join(planted[place].values())


def encoded(place: str, at: str) -> str:
    """Return an address whose @ is written in another way."""
    planted[place] = {"email": canary(place, "email").replace("@", at)}
    return planted[place]["email"]


def masked_attributes(*, params: MaskOtelSpansParams) -> MaskOtelSpansResult:
    patches = {
        identifier: OtelSpanPatch(
            set_attributes=recipe.masked_fields(span.attributes),
            delete_attributes=[*span.attributes],
        )
        for identifier, span in params.spans.items()
    }
    return MaskOtelSpansResult(span_patches=patches)


def masked_data(*, data: Any, **_: Any) -> Any:
    return recipe.safe(data)


def fail_because(text: str, *_: Any) -> None:
    raise LookupError(text)


@observe(name="look-up")
def fail_in_decorator() -> None:
    fail_because(canary("exception in a decorated function"))


def plant(langfuse: Any) -> None:
    with (
        propagate_attributes(
            user_id=canary("user id", "email"),
            session_id=canary("session id", "email", "card"),
            tags=["a", canary("tag", "email", "phone", "key")],
            metadata={
                "text": canary("propagated metadata", "email", "card", "phone"),
                canary("key of propagated metadata", "email"): 1,
                "list": [canary("list in propagated metadata", "email", "card")],
                "user_id": canary("user id in propagated metadata", "email"),
            },
            version=canary("version", "email", "key"),
            trace_name=canary("trace name", "email", "phone"),
        ),
        langfuse.start_as_current_observation(
            name=canary("name of a span"),
            input=canary("input"),
            metadata={
                "text": canary("metadata"),
                canary("key of metadata", "email"): 1,
                "nested": {"list": [{"deep": canary("nested metadata")}]},
            },
        ) as root,
    ):
        root.update(output={"list": [canary("output"), 1, None], canary("key of output"): True})
        plant_below(langfuse, root)


def plant_below(langfuse: Any, root: Any) -> None:
    call = {"arguments": json.dumps({"to": canary("JSON text in JSON")})}
    generation = root.start_observation(
        name="write-answer",
        as_type="generation",
        model="gpt-4o-mini",
        model_parameters={"stop": canary("model parameters")},
        usage_details={"input": 1200, "output": 30},
        input=[{"role": "user", "content": canary("message"), "tool_calls": [call]}],
        metadata={"number": int(card(len(planted)))},
    )
    canary("number in metadata", "card")
    generation.update(level="WARNING", status_message=canary("status message"))
    generation.score(name="rating", value=1, comment=canary("comment of span.score"))
    generation.end()
    root.create_event(name="note", input=json.dumps(canary("event")))
    root.start_observation(name="fail", level="ERROR", status_message=canary("error message")).end()
    root.start_observation(
        name="escaped", input=f'{{"to": "{encoded("JSON escape", ESCAPE)}"}}'
    ).end()
    root.start_observation(
        name="deep", input="[" * 100_000 + canary("JSON nested too deeply")
    ).end()
    root.score_trace(name="note", value=canary("text score"), data_type="TEXT")
    langfuse.create_score(
        trace_id=root.trace_id,
        name="rating",
        value=1,
        comment=canary("comment of create_score"),
        metadata={"why": canary("metadata of a score")},
    )
    langfuse.create_score(session_id=canary("session of a score", "email"), name="all", value=1)
    with suppress(LookupError):
        fail_in_decorator()
    with suppress(LookupError), langfuse.start_as_current_observation(name="look-up"):
        fail_because(canary("exception in a block"))
    plant_in_other_libraries()
    langfuse.create_dataset(name="canaries")
    langfuse.create_dataset_item(
        dataset_name="canaries",
        input=canary("input of a test case"),
        expected_output={"text": canary("expected output of a test case")},
    )


def plant_in_other_libraries() -> None:
    tracer = trace.get_tracer("other.library")
    said = [{"role": "user", "parts": [{"content": canary("gen_ai messages")}]}]
    with tracer.start_as_current_span(canary("name of a foreign span")) as span:
        span.set_attribute("gen_ai.operation.name", "chat")
        span.set_attribute("gen_ai.input.messages", json.dumps(said))
        span.set_attribute("gen_ai.list", [canary("gen_ai list"), "b"])
        span.set_attribute("enduser.id", canary("enduser.id", "email"))
        span.set_attribute("http.url", f"https://x.test/?to={encoded('url', '%40')}")
        span.add_event(canary("name of an event"), {"text": canary("attribute of an event")})
        span.add_link(span.get_span_context(), {"text": canary("attribute of a link")})
        span.record_exception(ValueError(canary("recorded exception")))
        span.set_status(trace.Status(trace.StatusCode.ERROR, canary("foreign status")))
    with suppress(openai.NotFoundError):
        OpenAI().chat.completions.create(
            model=canary("name of a model"),
            messages=[{"role": "user", "content": canary("message to OpenAI")}],
        )


OPTIONS = {
    "none": dict,
    "langfuse": lambda: {"mask": masked_data, "mask_otel_spans": masked_attributes},
    "gate": recipe.gate,
}

if __name__ == "__main__":
    for argument in sys.argv[1:]:
        mode, _, url = argument.partition("=")
        if child := os.fork():
            if os.waitpid(child, 0)[1]:
                sys.exit(f"{mode} failed")
            continue
        os.environ["LANGFUSE_BASE_URL"] = url
        connect()
        plant(Langfuse(**OPTIONS[mode]()))
        get_client().flush()
        sys.stdout.write(f"\n{mode}={json.dumps(planted)}\n")
        break
