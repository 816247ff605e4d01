"""What a token costs: the price table, usage buckets, and the cost of one call.

A call is priced bucket by bucket: the tokens in `input`, in `input_cached_tokens`, in
`output` and so on, each times its own price. Buckets do not overlap, so costs add up.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

AS_OF = date(2026, 11, 28)
OPENAI = "https://developers.openai.com/api/docs/pricing"
ANTHROPIC = "https://platform.claude.com/docs/en/about-claude/pricing"
GOOGLE = "https://ai.google.dev/gemini-api/docs/pricing"

# Langfuse, OpenAI, Anthropic and LangChain have different names for the same tokens.
INPUT = ("input", "input_tokens")
CACHED = ("input_cached_tokens", "cache_read_input_tokens", "input_cache_read")
WRITTEN = (
    *("input_cache_write_tokens", "cache_creation_input_tokens"),
    *("input_cache_creation", "input_cache_creation_5m"),
)
KEPT = ("input_cache_creation_1h",)  # written to a cache that lasts an hour
OUTPUT = ("output", "output_tokens")
REASONING = ("output_reasoning_tokens", "output_reasoning")


@dataclass(frozen=True)
class Price:
    """List price of one model, standard tier: USD per million tokens, by usage bucket."""

    model: str
    usd_per_million: Mapping[str, Decimal]
    source: str
    long_prompt: tuple[int, str, str] | None = None  # above so many tokens: input x, output x
    shut_down: date | None = None
    successor: str = ""

    def per_token(self, prompt_tokens: int = 0) -> dict[str, Decimal]:
        """Return USD per token by usage bucket, for a call with a prompt of this length."""
        above, *factors = self.long_prompt or (prompt_tokens, "1", "1")
        into, out = map(Decimal, factors if prompt_tokens > above else ("1", "1"))
        return {
            bucket: usd * (out if bucket in OUTPUT + REASONING else into) / 1_000_000
            for bucket, usd in self.usd_per_million.items()
        }


def _chat(  # noqa: PLR0917  a row is read as a row
    model: str, source: str, input: str, cached: str, written: str, output: str, **more: Any
) -> Price:
    """Return a row; a model that charges nothing extra for writing to a cache has "" there."""
    kept = str(2 * Decimal(input)) if source == ANTHROPIC else ""
    thoughts = "" if model.startswith(("gpt-4", "claude")) else output  # billed as output
    prices = {INPUT: input, CACHED: cached, WRITTEN: written, KEPT: kept, OUTPUT: output}
    prices[REASONING] = thoughts
    usd = {name: Decimal(price) for names, price in prices.items() if price for name in names}
    return Price(model, usd, source, **more)


def _embedding(model: str, total: str) -> Price:
    return Price(model, {"total": Decimal(total)}, OPENAI)


_GPT_4O: dict[str, Any] = {"shut_down": date(2027, 1, 14)}
_LONG: dict[str, Any] = {"long_prompt": (272_000, "2", "1.5")}
# USD per million tokens: input, cached input, written to a cache, output. Another model
# is one more row here, and a call of `POST /api/public/models` in Langfuse.
PRICES: tuple[Price, ...] = (
    _chat("gpt-6-luna", OPENAI, "0.10", "0.01", "0.125", "0.50", **_LONG),
    _chat("gpt-6.1-terra", OPENAI, "1", "0.05", "1.25", "5", **_LONG),
    _chat("gpt-6-sol", OPENAI, "2", "0.20", "2.50", "10", **_LONG),
    _chat("gpt-6.1-sol", OPENAI, "2", "0.10", "2.50", "10", **_LONG),
    _chat("gpt-6-astra", OPENAI, "10", "1", "12.50", "50", **_LONG),
    _chat("gpt-5.6-luna", OPENAI, "0.20", "0.02", "0.25", "1.20", **_LONG),
    _chat("gpt-5.4-mini", OPENAI, "0.75", "0.075", "", "4.50"),
    _chat("gpt-4o-mini", OPENAI, "0.15", "0.075", "", "0.60", successor="gpt-6-luna", **_GPT_4O),
    _chat("gpt-4o", OPENAI, "2.50", "1.25", "", "10", **_GPT_4O),
    _chat("claude-haiku-4-5", ANTHROPIC, "1", "0.10", "1.25", "5"),
    _chat(
        *("claude-haiku-5-5", ANTHROPIC, "0.10", "0.01", "0.125", "0.50"),
        long_prompt=(100_000, "5", "5"),
    ),
    _chat("claude-sonnet-5-5", ANTHROPIC, "2", "0.10", "2.50", "10"),
    _chat("claude-opus-5-5", ANTHROPIC, "4", "0.20", "5", "20"),
    _chat("gemini-3-flash-preview", GOOGLE, "0.50", "0.05", "", "3"),
    _embedding("text-embedding-3-small", "0.02"),
    _embedding("text-embedding-3-large", "0.13"),
)


def undated(model: str) -> str:
    """Return the model's name without provider, region, date, version and capitals.

    `undated("us.anthropic.claude-haiku-4-5-20251001-v1:0") -> "claude-haiku-4-5"`
    """
    name = re.sub(r"^((openai|anthropic)/|([a-z]+\.)?anthropic\.)", "", model.lower())
    return re.sub(r"([-@](\d{4}-\d{2}-\d{2}|\d{8}))?(-v\d+:\d+)?$", "", name)


def price_of(model: str) -> Price | None:
    """Return the price of a model, dated or not, or None where it is not in the table."""
    name = undated(model)
    return next((price for price in PRICES if price.model == name), None)


def usage_buckets(usage: Mapping[str, Any]) -> dict[str, int]:
    """Split usage as an API reports it into buckets that do not overlap, as Langfuse does.

    OpenAI counts cached tokens twice: in `prompt_tokens` and again in its details. They are
    taken out of `input`. Anything that does not have OpenAI's own keys is taken to be split
    already. Raises ValueError for a count that is no number.

    `usage_buckets({"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11,
    "prompt_tokens_details": {"cached_tokens": 4}})
    -> {"input": 5, "output": 2, "total": 11, "input_cached_tokens": 4}`
    """
    if usage.keys() == {"prompt_tokens", "total_tokens"}:  # an embedding has no output
        return {"input": int(usage["prompt_tokens"]), "total": int(usage["total_tokens"])}
    for sides in (("prompt_tokens", "completion_tokens"), ("input_tokens", "output_tokens")):
        own = {*sides, "total_tokens"}
        if own <= usage.keys() <= own | {f"{side}_details" for side in sides}:
            buckets = {"input": 0, "output": 0, "total": int(usage["total_tokens"])}
            for side, key in zip(("input", "output"), sides, strict=True):
                details = _counts(usage.get(f"{key}_details") or {})
                buckets |= {f"{side}_{detail}": count for detail, count in details.items()}
                buckets[side] = max(int(usage[key]) - sum(details.values()), 0)
            return buckets
    counts = _counts(usage)
    written = usage.get("cache_creation")
    if isinstance(written, Mapping):  # Anthropic's: what was written, again, by how long it lasts
        counts.pop("cache_creation_input_tokens", None)
        parts = _counts(written)
        for lasts in ("5m", "1h"):
            counts[f"input_cache_creation_{lasts}"] = parts.get(
                f"ephemeral_{lasts}_input_tokens", 0
            )
    if counts:
        counts.setdefault("total", sum(counts.values()))
    return counts


def _counts(usage: Mapping[str, Any]) -> dict[str, int]:
    return {k: int(n) for k, n in usage.items() if type(n) in (int, float) and n >= 0}


def cost_by_bucket(model: str, usage: Mapping[str, Any]) -> dict[str, Decimal] | None:
    """Return what each priced bucket of a call costs in USD, and their `total`.

    None where no bucket has a price: the cost is unknown, which is not 0.
    """
    price, buckets = price_of(model), usage_buckets(usage)
    if price is None:
        return None
    prompt = sum(n for name, n in buckets.items() if name in INPUT + CACHED + WRITTEN + KEPT)
    per_token = price.per_token(prompt)
    costs = {key: n * per_token[key] for key, n in buckets.items() if key in per_token}
    return {**costs, "total": sum(costs.values(), Decimal(0))} if costs else None


def cost_of(model: str, usage: Mapping[str, Any]) -> Decimal | None:
    """Return the cost of one call in USD, or None where no bucket has a price.

    `usage` is the `usage` of a response as a dict, or buckets that do not overlap. Where
    `unpriced_buckets` names any, the call costs more than this.

    `cost_of("gpt-6-luna", {"input": 1000, "output": 500}) -> Decimal("0.00035")`
    """
    costs = cost_by_bucket(model, usage)
    return None if costs is None else costs["total"]


def unpriced_buckets(model: str, usage: Mapping[str, Any]) -> list[str]:
    """Return the buckets with tokens that no price is known for, and that no cost contains.

    `unpriced_buckets("gpt-4o-mini", {"input": 9, "input_audio_tokens": 5})
    -> ["input_audio_tokens"]`
    """
    price = price_of(model)
    known = price.usd_per_million if price else {}
    counts = usage_buckets(usage).items()
    return [] if "total" in known else [k for k, n in counts if n and k not in {*known, "total"}]
