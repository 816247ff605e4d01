"""What a token costs: the price table, usage buckets, and the cost of one call.

Langfuse prices a call bucket by bucket: it takes the tokens in `input`, in
`input_cached_tokens`, in `output` and so on, and multiplies each by its own price.
Buckets do not overlap, so their costs can be added up.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

MILLION = Decimal(1_000_000)
AS_OF = date(2026, 11, 20)
OPENAI = "https://openai.com/api/pricing/"
ANTHROPIC = "https://claude.com/pricing#api"


@dataclass(frozen=True)
class Price:
    """List price of one model: USD per million tokens, by usage bucket."""

    model: str
    usd_per_million: Mapping[str, Decimal]
    source: str
    as_of: date = AS_OF

    def per_token(self) -> dict[str, Decimal]:
        """Return the price of a single token in USD, by usage bucket."""
        return {bucket: price / MILLION for bucket, price in self.usd_per_million.items()}


def _chat(model: str, input: str, cached: str | None, output: str) -> Price:
    buckets = {
        "input": input,
        "input_cached_tokens": cached,
        "input_cache_read": cached,  # LangChain's name for it
        "output": output,
    }
    return Price(model, {k: Decimal(v) for k, v in buckets.items() if v is not None}, OPENAI)


def _reasoning(model: str, input: str, cached: str, output: str) -> Price:
    # Tokens a model thinks with are billed as output, and are a bucket of their own.
    chat = _chat(model, input, cached, output).usd_per_million
    thoughts = {"output_reasoning_tokens": Decimal(output), "output_reasoning": Decimal(output)}
    return Price(model, {**chat, **thoughts}, OPENAI)


def _claude(model: str, input: str, cached: str, output: str) -> Price:
    buckets = {
        "input": input,
        "input_cached_tokens": cached,
        "input_cache_read": cached,
        "cache_read_input_tokens": cached,  # the name in Anthropic's own usage
        "output": output,
    }
    return Price(model, {k: Decimal(v) for k, v in buckets.items()}, ANTHROPIC)


def _embedding(model: str, total: str) -> Price:
    return Price(model, {"total": Decimal(total)}, OPENAI)


# USD per million tokens, standard tier: input, cached input, output. Another model
# is one more row here, or a call of `POST /api/public/models` in Langfuse.
PRICES: tuple[Price, ...] = (
    _chat("gpt-4o-mini", "0.15", "0.075", "0.60"),
    _chat("gpt-4o", "2.50", "1.25", "10"),
    _chat("gpt-4-turbo", "10", None, "30"),
    _chat("gpt-4.1", "2", "0.5", "8"),
    _chat("gpt-4.1-mini", "0.4", "0.1", "1.6"),
    _chat("gpt-4.1-nano", "0.1", "0.025", "0.4"),
    _reasoning("gpt-5", "1.25", "0.125", "10"),
    _reasoning("gpt-5-mini", "0.25", "0.025", "2"),
    _reasoning("gpt-5-nano", "0.05", "0.005", "0.4"),
    _reasoning("gpt-5.1", "1.25", "0.125", "10"),
    _reasoning("o4-mini", "1.1", "0.275", "4.4"),
    _claude("claude-sonnet-4-5", "3", "0.3", "15"),
    _claude("claude-haiku-4-5", "1", "0.1", "5"),
    _embedding("text-embedding-3-small", "0.02"),
    _embedding("text-embedding-3-large", "0.13"),
)

_DATE = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8})$")


def undated(model: str) -> str:
    """Return the model's name without provider, date and capitals.

    `undated("openai/gpt-4o-mini-2024-07-18") -> "gpt-4o-mini"`
    """
    return _DATE.sub("", model.lower().removeprefix("openai/").removeprefix("anthropic/"))


def price_of(model: str) -> Price | None:
    """Return the price of a model, dated or not, or None where it is not in the table."""
    name = undated(model)
    return next((price for price in PRICES if price.model == name), None)


def usage_buckets(usage: Mapping[str, Any]) -> dict[str, int]:
    """Split usage as an API reports it into buckets that do not overlap.

    OpenAI counts cached tokens twice: in `prompt_tokens` and again in its details.
    Langfuse takes them out of `input`, and so does this; anything that does not have
    OpenAI's own keys is taken to be split already and comes back as it is.

    `usage_buckets({"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11,
    "prompt_tokens_details": {"cached_tokens": 4}})
    -> {"input": 5, "output": 2, "total": 11, "input_cached_tokens": 4}`
    """
    if usage.keys() == {"prompt_tokens", "total_tokens"}:  # an embedding has no output
        return {"input": int(usage["prompt_tokens"]), "total": int(usage["total_tokens"])}
    for into, out_of in (("prompt", "completion"), ("input", "output")):
        sides = {"input": f"{into}_tokens", "output": f"{out_of}_tokens"}
        own_keys = {*sides.values(), "total_tokens"}
        details = {f"{key}_details" for key in sides.values()}
        if own_keys <= usage.keys() <= own_keys | details:
            break
    else:
        counts = {key: int(count) for key, count in usage.items() if _is_count(count)}
        if counts and "total" not in counts:
            counts["total"] = sum(counts.values())
        return counts
    buckets = {side: int(usage[key]) for side, key in sides.items()}
    buckets["total"] = int(usage["total_tokens"])
    for side, key in sides.items():
        for detail, count in (usage.get(f"{key}_details") or {}).items():
            if _is_count(count):
                buckets[f"{side}_{detail}"] = int(count)
                buckets[side] = max(buckets[side] - int(count), 0)
    return buckets


def _is_count(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def cost_by_bucket(model: str, usage: Mapping[str, Any]) -> dict[str, Decimal] | None:
    """Return what each priced bucket of a call costs in USD, and their `total`.

    None for a model that is not in the table: its cost is unknown, which is not 0.
    """
    price = price_of(model)
    if price is None:
        return None
    per_token = price.per_token()
    buckets = usage_buckets(usage)
    costs = {key: buckets[key] * per_token[key] for key in buckets if key in per_token}
    costs["total"] = sum(costs.values(), start=Decimal(0))
    return costs


def cost_of(model: str, usage: Mapping[str, Any]) -> Decimal | None:
    """Return the cost of one call in USD, or None for a model without a price.

    `usage` is the `usage` of a response as a dict, or buckets that do not overlap.

    `cost_of("gpt-4o-mini", {"input": 1000, "output": 500}) -> Decimal("0.00045")`
    """
    costs = cost_by_bucket(model, usage)
    return None if costs is None else costs["total"]
