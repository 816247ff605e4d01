"""What a token costs: the price table, usage buckets, and the cost of one call.

A call is priced bucket by bucket: the tokens in `input`, in `input_cached_tokens`, in
`output` and so on, each times its own price. Buckets do not overlap, so you can add the costs.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

# Langfuse, OpenAI, Anthropic and LangChain have different names for the same tokens.
INPUT = ("input", "input_tokens", "input_text_tokens")
CACHED = ("input_cached_tokens", "cache_read_input_tokens", "input_cache_read")
WRITTEN = (
    *("input_cache_write_tokens", "cache_creation_input_tokens", "input_cache_creation"),
    *("input_cache_creation_5m", "cache_creation.ephemeral_5m_input_tokens"),
)
# Written to a cache that lasts an hour.
KEPT = ("input_cache_creation_1h", "cache_creation.ephemeral_1h_input_tokens")
OUTPUT = ("output", "output_tokens", "output_text_tokens")
REASONING = ("output_reasoning_tokens", "output_reasoning")


@dataclass(frozen=True)
class Price:
    """List price of one model, standard tier: USD per million tokens, by usage bucket."""

    model: str
    usd_per_million: Mapping[str, Decimal]
    long_prompt: tuple[int, str, str] | None = None  # above this many tokens: input x, output x
    shut_down: date | None = None
    successor: str = ""

    def per_token(self, prompt_tokens: int = 0) -> dict[str, Decimal]:
        """Return USD per token, by usage bucket, for a call with a prompt of this length."""
        above, *factors = self.long_prompt or (prompt_tokens, "1", "1")
        into, out = map(Decimal, factors if prompt_tokens > above else ("1", "1"))
        return {
            bucket: usd * (out if "output" in bucket else into) / 1_000_000
            for bucket, usd in self.usd_per_million.items()
        }


def _chat(model: str, input: str, cached: str, written: str, output: str, **more: Any) -> Price:
    """Return a row; `written` is "" if the model charges nothing extra for cache writes."""
    claude = model.startswith("claude")
    prices = {INPUT: input, CACHED: cached, WRITTEN: written, OUTPUT: output}
    prices[KEPT] = str(2 * Decimal(input)) if claude else ""
    prices[REASONING] = "" if claude or model.startswith("gpt-4") else output  # billed as output
    usd = {name: Decimal(price) for names, price in prices.items() if price for name in names}
    return Price(model, usd, **more)


_LONG = (272_000, "2", "1.5")
_JANUARY = date(2027, 1, 14)
AS_OF = date(2026, 11, 28)  # the date of these list prices
# USD per million tokens: input, cached input, written to a cache, output. To add a model,
# add a row here, and in Langfuse call `POST /api/public/models`.
PRICES: tuple[Price, ...] = (
    # https://developers.openai.com/api/docs/pricing
    _chat("gpt-6-luna", "0.10", "0.01", "0.125", "0.50", long_prompt=_LONG),
    _chat("gpt-6.1-terra", "1", "0.05", "1.25", "5", long_prompt=_LONG),
    _chat("gpt-6-sol", "2", "0.20", "2.50", "10", long_prompt=_LONG),
    _chat("gpt-6.1-sol", "2", "0.10", "2.50", "10", long_prompt=_LONG),
    _chat("gpt-6-astra", "10", "1", "12.50", "50", long_prompt=_LONG),
    _chat("gpt-5.6-luna", "0.20", "0.02", "0.25", "1.20", long_prompt=_LONG),
    _chat("gpt-5.4-mini", "0.75", "0.075", "", "4.50"),
    _chat("gpt-4o-mini", "0.15", "0.075", "", "0.60", shut_down=_JANUARY, successor="gpt-6-luna"),
    _chat("gpt-4o", "2.50", "1.25", "", "10", shut_down=_JANUARY),
    Price("text-embedding-3-small", {"total": Decimal("0.02")}),
    Price("text-embedding-3-large", {"total": Decimal("0.13")}),
    # https://platform.claude.com/docs/en/about-claude/pricing
    _chat("claude-haiku-4-5", "1", "0.10", "1.25", "5"),
    _chat("claude-haiku-5-5", "0.10", "0.01", "0.125", "0.50", long_prompt=(100_000, "5", "5")),
    _chat("claude-sonnet-5-5", "2", "0.10", "2.50", "10"),
    _chat("claude-opus-5-5", "4", "0.20", "5", "20"),
    # https://ai.google.dev/gemini-api/docs/pricing
    _chat("gemini-3-flash-preview", "0.50", "0.05", "", "3"),
)


def undated(model: str) -> str:
    """Return the model's name in lower case, without provider, region, date or version.

    `undated("us.anthropic.claude-haiku-4-5-20251001-v1:0") -> "claude-haiku-4-5"`
    """
    name = re.sub(r"^((openai|anthropic|google)/|([a-z-]+\.)?anthropic\.)", "", model.lower())
    return re.sub(r"([-@](\d{4}-\d{2}-\d{2}|\d{8}))?(-v\d+(:\d+)?)?$", "", name)


def price_of(model: str) -> Price | None:
    """Return the price of a model, dated or not, or None if it is not in the table."""
    name = undated(model)
    return next((price for price in PRICES if price.model == name), None)


def usage_buckets(usage: Mapping[str, Any]) -> dict[str, int]:
    """Split usage as an API reports it into buckets that do not overlap, as Langfuse does.

    OpenAI counts cached tokens twice: in `prompt_tokens` and again in its details. They are
    taken out of `input`. Usage with other keys than OpenAI's keeps its names. A count that is
    negative or not a whole number is left out.

    `usage_buckets({"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11,
    "prompt_tokens_details": {"cached_tokens": 4}})
    -> {"input": 5, "output": 2, "total": 11, "input_cached_tokens": 4}`
    """
    buckets = _counts(usage)
    for into, out in (("prompt_tokens", "completion_tokens"), ("input_tokens", "output_tokens")):
        own, details = {into, out, "total_tokens"}, {f"{into}_details", f"{out}_details"}
        if own - {"completion_tokens"} <= usage.keys() <= own | details:  # an embedding has none
            names = {into: "input", out: "output", "total_tokens": "total"}
            buckets = {names[key]: count for key, count in buckets.items() if key in names}
            _take_out(buckets, "input", "input_", usage.get(f"{into}_details"))
            _take_out(buckets, "output", "output_", usage.get(f"{out}_details"))
    # Anthropic counts cache writes twice: in total, and again by how long they are kept.
    written = usage.get("cache_creation")
    _take_out(buckets, "cache_creation_input_tokens", "cache_creation.", written)
    if buckets:
        buckets.setdefault("total", sum(buckets.values()))
    return buckets


def _take_out(buckets: dict[str, int], whole: str, prefix: str, parts: Any) -> None:
    counts = _counts(parts)
    if whole in buckets:
        buckets[whole] = max(buckets[whole] - sum(counts.values()), 0)
    buckets |= {prefix + name: count for name, count in counts.items()}


def _counts(usage: Any) -> dict[str, int]:
    numbers = usage.items() if isinstance(usage, Mapping) else ()
    return {k: int(n) for k, n in numbers if type(n) in (int, float) and n >= 0 and n % 1 == 0}


def cost_of(model: str, usage: Mapping[str, Any]) -> Decimal | None:
    """Return the cost of one call in USD, or None if no bucket has a price.

    `usage` is the `usage` of a response as a dict, or buckets that do not overlap. If
    `unpriced_buckets` names any, the call costs more than this.

    `cost_of("gpt-6-luna", {"input": 1000, "output": 500}) -> Decimal("0.00035")`
    """
    price, buckets = price_of(model), usage_buckets(usage)
    if price is None:
        return None
    usd = price.per_token(sum(count for name, count in buckets.items() if "input" in name))
    costs = [count * usd[name] for name, count in buckets.items() if name in usd]
    has_cost = any(costs) or (costs and not any(buckets.values()))
    return sum(costs, Decimal(0)) if has_cost else None


def unpriced_buckets(model: str, usage: Mapping[str, Any]) -> list[str]:
    """Return the buckets that have tokens but no known price, so that no cost includes them.

    `unpriced_buckets("gpt-4o-mini", {"input": 9, "input_audio_tokens": 5})
    -> ["input_audio_tokens"]`
    """
    price = price_of(model)
    known = price.usd_per_million if price else {}
    counts = usage_buckets(usage).items()
    return [] if "total" in known else [k for k, n in counts if n and k not in {*known, "total"}]
