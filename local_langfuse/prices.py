"""List prices from genai-prices, as prices per token for each usage bucket."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import regex  # type: ignore[import-untyped]  # it ships no types

from local_langfuse.differences import has_one_price, is_flat, plain_name, reasons

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, Provider

MATCH_SECONDS = 0.05
MILLION = Decimal(1_000_000)
LONGEST_NAME = 200
# The providers whose models cost the same everywhere. What many hosts serve has no list price.
PROVIDERS = {"claude": "anthropic", "gemini": "google"}  # anything else: OpenAI's
EPHEMERAL = "cache_creation.ephemeral_{}_input_tokens"
# The buckets that each price in genai-prices is for. If two are for one bucket, the later wins.
KINDS: Mapping[str, tuple[str, ...]] = {
    "input_mtok": ("input", "input_tokens", "input_text_tokens"),
    "output_mtok": ("output", "output_tokens", "output_text_tokens"),
    "cache_read_mtok": ("input_cached_tokens", "input_cache_read", "cache_read_input_tokens"),
    "cache_write_mtok": (
        *("input_cache_write_tokens", "input_cache_creation", "cache_creation_input_tokens"),
        *("input_cache_creation_5m", EPHEMERAL.format("5m")),
    ),
    "cache_write_5m_mtok": ("input_cache_creation_5m", EPHEMERAL.format("5m")),
    "cache_write_1h_mtok": ("input_cache_creation_1h", EPHEMERAL.format("1h")),
    "input_audio_mtok": ("input_audio_tokens", "input_audio"),
    "output_audio_mtok": ("output_audio_tokens", "output_audio"),
    "input_image_mtok": ("input_image_tokens", "input_image"),
    "output_image_mtok": ("output_image_tokens", "output_image"),
}
REASONING = ("output_reasoning_tokens", "output_reasoning")
OPERATORS = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
    "eq": operator.eq,
    "neq": operator.ne,
}


@dataclass(frozen=True)
class Condition:
    """When a tier applies: a limit for the tokens in the buckets that match a pattern."""

    pattern: str
    operator: str
    value: float
    case_sensitive: bool = False

    def holds(self, usage: Mapping[str, int]) -> bool:
        """Tell whether this usage meets the condition."""
        counted = (n for bucket, n in usage.items() if self._counts(bucket))
        return bool(OPERATORS[self.operator](sum(counted), self.value))

    def _counts(self, bucket: str) -> bool:
        return found(self.pattern, bucket, ignore_case=not self.case_sensitive)


@dataclass(frozen=True)
class Tier:
    """Prices in USD per token by usage bucket, and when they apply."""

    prices: Mapping[str, Decimal]
    name: str = "Standard"
    conditions: tuple[Condition, ...] = ()  # all must hold; the default tier has none


@dataclass(frozen=True)
class Tariff:
    """The price of a model."""

    id: str
    tiers: tuple[Tier, ...]  # in the order they are tried; the last has no condition

    def costs(self, usage: Mapping[str, int]) -> dict[str, Decimal]:
        """Return the cost of each bucket that has a price, and `total`; empty if none has one."""
        tier = next(t for t in self.tiers if all(c.holds(usage) for c in t.conditions))
        costs = {k: count * tier.prices[k] for k, count in usage.items() if k in tier.prices}
        if costs:
            costs.setdefault("total", sum(costs.values(), start=Decimal(0)))
        return costs


@lru_cache(maxsize=4096)
def found(pattern: str, text: str, *, ignore_case: bool = False) -> bool:
    """Tell whether the pattern is found in the text in time; the next batch tries again."""
    flags = regex.IGNORECASE if ignore_case else 0
    try:
        return regex.search(pattern, text, flags, timeout=MATCH_SECONDS) is not None
    except TimeoutError:
        return False


def list_price(model: str, day: date) -> Tariff | None:
    """Return the list price of a model on a day, or None for a model that has none."""
    return _list_price(model, day) if len(model) <= LONGEST_NAME else None


@lru_cache(maxsize=2048)
def _list_price(model: str, day: date) -> Tariff | None:
    name = plain_name(model)
    own = next((owner for start, owner in PROVIDERS.items() if name.startswith(start)), "openai")
    provider = next(provider for provider in _providers() if provider.id == own)
    known = provider.find_model(name) if name else None
    return None if known is None else _tariff(known, day)


def list_prices() -> tuple[Tariff, ...]:
    """Return today's list prices."""
    return _list_prices(datetime.now(UTC).date())


@lru_cache(maxsize=1)
def _list_prices(day: date) -> tuple[Tariff, ...]:
    owners = {"openai", *PROVIDERS.values()}
    names = (model.id for owner in _providers() if owner.id in owners for model in owner.models)
    tariffs = (list_price(name, day) for name in names)
    return tuple({tariff.id: tariff for tariff in tariffs if tariff is not None}.values())


def list_time_us() -> int:
    """Return when this machine got these list prices, in microseconds since 1970."""
    import genai_prices  # noqa: PLC0415

    return Path(genai_prices.__file__).stat().st_mtime_ns // 1000


def _providers() -> "list[Provider]":
    # Imported when the first model is priced: it takes a quarter of a second.
    from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415

    return get_snapshot().providers


def _tariff(model: "ModelInfo", day: date) -> Tariff | None:
    prices = model.get_prices(datetime.combine(day, time(), UTC))
    given = {kind: price for kind in KINDS if (price := getattr(prices, kind)) is not None}
    steps = {tier.start for price in given.values() for tier in getattr(price, "tiers", ())}
    limits = [] if is_flat(model.id) else sorted(steps, reverse=True)
    tiers = [
        Tier(
            _by_bucket(model.id, given, limit), f"Above {limit}", (Condition("input", "gt", limit),)
        )
        for limit in limits
    ]
    standard = _by_bucket(model.id, given, 0)
    return Tariff(model.id, (*tiers, Tier(standard))) if standard else None


def _by_bucket(model: str, given: Mapping[str, Any], above: int) -> dict[str, Decimal]:
    """Return USD per token by bucket for calls with more input tokens than `above`."""
    rates = {kind: _rate(price, above) / MILLION for kind, price in given.items()}
    if has_one_price(model) and "input_mtok" in rates:
        return {"total": rates["input_mtok"]}
    prices = {bucket: rate for kind, rate in rates.items() for bucket in KINDS[kind]}
    if reasons(model) and "output_mtok" in rates:
        prices |= dict.fromkeys(REASONING, rates["output_mtok"])
    return prices


def _rate(price: Any, above: int) -> Decimal:
    """Return a price from genai-prices in USD; there it is one number, or a base with steps."""
    if isinstance(price, Decimal):
        return price
    reached = [tier.price for tier in price.tiers if tier.start <= above]
    return Decimal(reached[-1] if reached else price.base)
