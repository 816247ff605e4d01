"""What a model costs: the price set through the API, or else the list price."""

import uuid
from collections.abc import Mapping
from dataclasses import asdict
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

# Not `re`: patterns come from outside, and only `regex` can have a time limit.
import regex  # type: ignore[import-untyped]  # it ships no types

from local_langfuse import prices
from local_langfuse.prices import MATCH_SECONDS, OPERATORS, Condition, Tariff, Tier, list_price
from local_langfuse.store import Row, Store
from local_langfuse.usage import usage_buckets
from local_langfuse.wire import (
    Query,
    Refused,
    as_object,
    finite,
    iso,
    microseconds,
    now_us,
    parse,
    text_in,
    to_json,
)

SIDES = ("input", "output", "total")
UNITS = ("TOKENS", "CHARACTERS", "MILLISECONDS", "SECONDS", "IMAGES", "REQUESTS")
EPOCH = date(1970, 1, 1)


class Tariffs:
    """Finds the price of a model at a given time; there is a new one for each batch."""

    def __init__(self, store: Store) -> None:
        rows = store.rows("SELECT * FROM models ORDER BY start_us DESC, created_us DESC")
        self._own = [(row, Tariff(row["id"], _tiers(row["prices"]))) for row in rows]
        prices.found.cache_clear()  # a pattern that ran out of time gets another chance

    def of(self, model: str, start_us: int) -> Tariff | None:
        """Return the price that applies, or None for a model that has none."""
        for row, tariff in self._own:
            if (row["start_us"] or 0) <= start_us and prices.found(row["match_pattern"], model):
                return tariff
        return list_price(model, EPOCH + timedelta(microseconds=start_us))


def amounts(usage: Any, given: Any, tariff: Tariff | None) -> Row:
    """Return the token and cost columns of an observation.

    `usage` and `given` are the usage and the cost that were sent. A cost that was sent wins
    over one computed from usage; without either, the cost is unknown (None), which is not 0.
    """
    buckets = usage_buckets(usage) if isinstance(usage, dict) else {}
    costs = _given(given) if isinstance(given, dict) else {}
    if not costs and tariff:
        costs = tariff.costs(buckets)
    return {
        "usage_details": to_json(buckets),
        "cost_details": to_json({bucket: finite(cost, "a cost") for bucket, cost in costs.items()}),
        "input_tokens": sum(n for bucket, n in buckets.items() if "input" in bucket),
        "output_tokens": sum(n for bucket, n in buckets.items() if "output" in bucket),
        "total_tokens": buckets.get("total", 0),
        "input_cost": _side(costs, "input"),
        "output_cost": _side(costs, "output"),
        "total_cost": finite(costs["total"], "a cost") if "total" in costs else None,
    }


def _given(costs: Mapping[str, Any]) -> dict[str, Decimal]:
    numbers = {
        bucket: Decimal(str(cost))
        for bucket, cost in costs.items()
        if isinstance(cost, int | float) and not isinstance(cost, bool)
    }
    # As Langfuse does: it only adds up these two keys by itself.
    if numbers and numbers.keys() <= {"input", "output"}:
        numbers["total"] = sum(numbers.values(), start=Decimal(0))
    return numbers


def _side(costs: Mapping[str, Decimal], side: str) -> float | None:
    parts = [cost for bucket, cost in costs.items() if side in bucket]
    return finite(sum(parts), "a cost") if parts else None


def page_of_models(store: Store, query: Query) -> Row:
    """Return a page of the models that have a price, as the API shows it: your own first."""
    number, limit = query.count("page", 1, 10**6), query.count("limit", 50, 100)
    own, listed = store.rows("SELECT * FROM models ORDER BY created_us DESC"), prices.list_prices()
    total, first = len(own) + len(listed), (number - 1) * limit
    asked = [*own, *listed][first : first + limit]
    data = [_listed(item) if isinstance(item, Tariff) else _own_model(item) for item in asked]
    meta = {"page": number, "limit": limit, "totalItems": total}
    return {"data": data, "meta": {**meta, "totalPages": -(-total // limit)}}


def _own_model(row: Any) -> Row:
    return {
        **_priced(row["id"], _tiers(row["prices"])),
        "modelName": row["name"],
        "matchPattern": row["match_pattern"],
        "unit": row["unit"],
        "createdAt": iso(row["created_us"], "milliseconds"),
        "startDate": None if row["start_us"] is None else iso(row["start_us"], "milliseconds"),
        "tokenizerId": row["tokenizer_id"],
        "tokenizerConfig": parse(row["tokenizer_config"]),
        "isLangfuseManaged": False,
    }


def _listed(tariff: Tariff) -> Row:
    return {
        **_priced(tariff.id, tariff.tiers),
        "modelName": tariff.id,
        "matchPattern": f"(?i)^({regex.escape(tariff.id)})$",
        "unit": "TOKENS",
        "createdAt": iso(prices.list_time_us(), "milliseconds"),
        **dict.fromkeys(("startDate", "tokenizerId", "tokenizerConfig")),
        "isLangfuseManaged": True,
    }


def _priced(model_id: str, tiers: tuple[Tier, ...]) -> Row:
    """Return prices as the API shows them: those of the default tier, then all tiers."""
    usual = {bucket: float(price) for bucket, price in tiers[-1].prices.items()}
    shown = [_shown(model_id, number, tier) for number, tier in enumerate((tiers[-1], *tiers[:-1]))]
    return {
        "id": model_id,
        **{f"{side}Price": usual.get(side) for side in SIDES},
        "prices": {bucket: {"price": price} for bucket, price in usual.items()},
        "pricingTiers": shown,
    }


def _shown(model_id: str, number: int, tier: Tier) -> Row:
    names = {"usageDetailPattern": "pattern", "operator": "operator", "value": "value"}
    names["caseSensitive"] = "case_sensitive"
    return {
        "id": f"{model_id}_tier_{number or 'default'}",
        "name": tier.name,
        "isDefault": not number,
        "priority": number,
        "conditions": [{k: getattr(c, name) for k, name in names.items()} for c in tier.conditions],
        "prices": {bucket: float(price) for bucket, price in tier.prices.items()},
    }


def _tiers(text: str) -> tuple[Tier, ...]:
    """Return the tiers in a row, which holds a list of them or the prices of the only one."""
    stored = parse(text)
    return tuple(map(_tier, stored if isinstance(stored, list) else [{"prices": stored}]))


def _tier(stored: Row) -> Tier:
    conditions = tuple(Condition(**condition) for condition in stored.get("conditions", ()))
    usd = {bucket: Decimal(price) for bucket, price in stored["prices"].items()}
    return Tier(usd, stored.get("name", "Standard"), conditions)


def _stored(tiers: tuple[Tier, ...]) -> str:
    if len(tiers) == 1:  # as they were stored before there were tiers
        return to_json({bucket: str(price) for bucket, price in tiers[0].prices.items()})
    rows = [
        {
            "name": tier.name,
            "conditions": [asdict(condition) for condition in tier.conditions],
            "prices": {bucket: str(price) for bucket, price in tier.prices.items()},
        }
        for tier in tiers
    ]
    return to_json(rows)


def add_model(store: Store, body: Any) -> Row:
    """Store a model with prices in USD per unit, and return it as the API shows it."""
    row = _model_row(as_object(body, "a model"))
    store.insert("models", [row])
    return _own_model(row)


def delete_model(store: Store, model_id: str, _: Query) -> None:
    """Remove a model that was added here."""
    if not store.delete("models", "id", [model_id]):
        raise Refused("no model with this id was added here", 404)


def _model_row(body: Row) -> Row:
    name, unit, start = text_in(body, "modelName"), body.get("unit"), body.get("startDate")
    if name is None:
        raise Refused("a model needs a modelName")
    if unit not in UNITS:
        raise Refused(f"unit must be one of {', '.join(UNITS)}")
    return {
        "id": str(uuid.uuid4()),
        "name": name,
        "match_pattern": _checked_pattern(body.get("matchPattern"), "matchPattern", name),
        "unit": unit,
        "prices": _stored(_tiers_of(body)),
        "start_us": None if start is None else microseconds(start, "startDate"),
        "tokenizer_id": text_in(body, "tokenizerId"),
        "tokenizer_config": to_json(body.get("tokenizerConfig")),
        "created_us": now_us(),
    }


def _checked_pattern(pattern: Any, what: str, name: str) -> str:
    if not isinstance(pattern, str) or not pattern:
        raise Refused(f"{what} must be a regular expression")
    try:
        # A long text that almost matches reveals a pattern that backtracks endlessly.
        for probe in (name, f"{name[-1] * 200}!", f"{name * 20}!", f"{'a' * 200}!"):
            regex.search(pattern, probe, timeout=MATCH_SECONDS)
    except TimeoutError:
        raise Refused(f"{what} takes too long: nested repeats?") from None
    except (regex.error, RecursionError, OverflowError, MemoryError) as error:
        raise Refused(f"{what} is not a regular expression: {error}") from None
    return pattern


def _tiers_of(body: Mapping[str, Any]) -> tuple[Tier, ...]:
    """Return the tiers in a request in the order they are tried, the default one last."""
    asked = {side: body.get(f"{side}Price") for side in SIDES}
    given = {side: price for side, price in asked.items() if price is not None}
    if body.get("pricingTiers") is None:
        if "total" in given and len(given) > 1:
            raise Refused("totalPrice cannot be given with inputPrice or outputPrice")
        return (Tier(_usd(given)),)
    if given:
        raise Refused("give either pricingTiers, or inputPrice, outputPrice and totalPrice")
    rows = _objects(body["pricingTiers"], "pricingTiers")
    ordered = sorted(rows, key=lambda row: (row.get("isDefault") is True, _priority(row)))
    tiers = tuple(map(_asked_tier, ordered))
    defaults = [row.get("isDefault") is True for row in ordered]
    if defaults.count(True) != 1 or defaults != [not tier.conditions for tier in tiers]:
        raise Refused("pricingTiers need one default tier, the only one without conditions")
    if any(tier.prices.keys() != tiers[-1].prices.keys() for tier in tiers):
        raise Refused("all pricing tiers must have prices for the same usage keys")
    return tiers


def _asked_tier(row: Row) -> Tier:
    name = text_in(row, "name")
    if name is None:
        raise Refused("a pricing tier needs a name")
    conditions = _objects(row.get("conditions") or [], "conditions")
    return Tier(
        _usd(as_object(row.get("prices"), "prices")), name, tuple(map(_condition, conditions))
    )


def _condition(row: Row) -> Condition:
    if row.get("operator") not in list(OPERATORS):  # a list: the value may not be hashable
        raise Refused(f"operator must be one of {', '.join(OPERATORS)}")
    if not _is_number(row.get("value")):
        raise Refused("value must be a number")
    pattern = _checked_pattern(row.get("usageDetailPattern"), "usageDetailPattern", "input")
    return Condition(pattern, row["operator"], row["value"], row.get("caseSensitive") is True)


def _objects(rows: Any, what: str) -> list[Row]:
    if not isinstance(rows, list):
        raise Refused(f"{what} must be a list")
    return [as_object(row, f"each of {what}") for row in rows]


def _priority(row: Row) -> float:
    priority: Any = row.get("priority")
    if not _is_number(priority):
        raise Refused("a pricing tier needs a priority, which is a number")
    return float(priority)


def _usd(given: Mapping[str, Any]) -> dict[str, Decimal]:
    if not given or not all(_is_number(price) and 0 <= price < 1e9 for price in given.values()):
        raise Refused("a model needs at least one price; each is an amount in USD, 0 or more")
    return {bucket: Decimal(str(price)) for bucket, price in given.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
