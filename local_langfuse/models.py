"""What a model costs here: prices added through the API first, then the price table."""

import sqlite3
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

# Not `re`: a pattern comes from outside, and only this one can be given a time limit.
import regex  # type: ignore[import-untyped]  # it ships no types

from common.pricing import AS_OF, PRICES, Price, price_of, usage_buckets
from local_langfuse.store import Row, Store
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

MATCH_SECONDS = 0.05
SIDES = ("input", "output", "total")
UNITS = ("TOKENS", "CHARACTERS", "MILLISECONDS", "SECONDS", "IMAGES", "REQUESTS")


@dataclass(frozen=True)
class Tariff:
    """The price of a model: USD per token by usage bucket."""

    id: str
    per_token: Mapping[str, Decimal]


class Tariffs:
    """Finds the price of a model at a time; made anew for each batch."""

    def __init__(self, store: Store) -> None:
        self._own = store.rows("SELECT * FROM models ORDER BY start_us DESC, created_us DESC")
        self._found: dict[tuple[str, str], bool] = {}

    def of(self, model: str, start_us: int) -> Tariff | None:
        """Return the price that holds, or None for a model that has none."""
        for own in self._own:
            if (own["start_us"] or 0) <= start_us and self._matches(own, model):
                return Tariff(own["id"], _prices(own))
        price = price_of(model)
        return None if price is None else Tariff(price.model, price.per_token())

    def _matches(self, own: sqlite3.Row, model: str) -> bool:
        key = own["id"], model
        if key not in self._found:
            self._found[key] = _matches(own["match_pattern"], model)
        return self._found[key]


def _matches(pattern: str, model: str) -> bool:
    try:
        return regex.search(pattern, model, timeout=MATCH_SECONDS) is not None
    except TimeoutError:
        return False


def _prices(model: sqlite3.Row) -> dict[str, Decimal]:
    return {bucket: Decimal(price) for bucket, price in parse(model["prices"]).items()}


def amounts(usage: Any, given: Any, tariff: Tariff | None) -> Row:
    """Return the token and cost columns of an observation.

    `usage` and `given` are usage and cost as they arrived. A cost that was given wins over
    one computed from usage; without either it is unknown (None), which is not 0.
    """
    try:
        buckets = usage_buckets(usage) if isinstance(usage, dict) else {}
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise Refused(f"usage details cannot be read: {error}") from None
    costs = _given(given) if isinstance(given, dict) else {}
    if not costs and tariff and buckets:
        costs = {k: n * tariff.per_token[k] for k, n in buckets.items() if k in tariff.per_token}
        costs["total"] = sum(costs.values(), start=Decimal(0))
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
    # As Langfuse does: beyond these two keys it adds nothing up by itself.
    if numbers and numbers.keys() <= {"input", "output"}:
        numbers["total"] = sum(numbers.values(), start=Decimal(0))
    return numbers


def _side(costs: Mapping[str, Decimal], side: str) -> float | None:
    parts = [cost for bucket, cost in costs.items() if side in bucket]
    return finite(sum(parts), "a cost") if parts else None


def page_of_models(store: Store, query: Query) -> Row:
    """Return a page of the models that have a price, as the API answers it: own ones first."""
    number, limit = query.count("page", 1, 10**6), query.count("limit", 50, 100)
    found = [_own_model(row) for row in store.rows("SELECT * FROM models ORDER BY created_us DESC")]
    found += [_table_model(price) for price in PRICES]
    meta = {"page": number, "limit": limit, "totalItems": len(found)}
    data = found[(number - 1) * limit : number * limit]
    return {"data": data, "meta": {**meta, "totalPages": -(-len(found) // limit)}}


def _own_model(row: Mapping[str, Any] | sqlite3.Row) -> Row:
    prices = {bucket: float(price) for bucket, price in parse(row["prices"]).items()}
    tier = {"id": f"{row['id']}_tier_default", "name": "Standard", "isDefault": True, "priority": 0}
    return {
        "id": row["id"],
        "modelName": row["name"],
        "matchPattern": row["match_pattern"],
        "unit": row["unit"],
        **{f"{side}Price": prices.get(side) for side in SIDES},
        "prices": {bucket: {"price": price} for bucket, price in prices.items()},
        "pricingTiers": [{**tier, "conditions": [], "prices": prices}],
        "createdAt": iso(row["created_us"], "milliseconds"),
        "startDate": None if row["start_us"] is None else iso(row["start_us"], "milliseconds"),
        "tokenizerId": row["tokenizer_id"],
        "tokenizerConfig": parse(row["tokenizer_config"]),
        "isLangfuseManaged": False,
    }


def _table_model(price: Price) -> Row:
    row = {
        "id": price.model,
        "name": price.model,
        "match_pattern": f"(?i)^({regex.escape(price.model)})$",
        "unit": "TOKENS",
        "prices": _stored(price.per_token()),
        "created_us": microseconds(f"{AS_OF}T00:00:00Z", "the date of the table"),
        **dict.fromkeys(("start_us", "tokenizer_id")),
        "tokenizer_config": "null",
    }
    return {**_own_model(row), "isLangfuseManaged": True}


def _stored(prices: Mapping[str, Decimal]) -> str:
    return to_json({bucket: str(price) for bucket, price in prices.items()})


def add_model(store: Store, body: Any) -> Row:
    """Store the model of a request and return it as the API shows it. Prices: USD per unit."""
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
        "match_pattern": _checked_pattern(body.get("matchPattern"), name),
        "unit": unit,
        "prices": _stored(_prices_of(body)),
        "start_us": None if start is None else microseconds(start, "startDate"),
        "tokenizer_id": text_in(body, "tokenizerId"),
        "tokenizer_config": to_json(body.get("tokenizerConfig")),
        "created_us": now_us(),
    }


def _checked_pattern(pattern: Any, name: str) -> str:
    if not isinstance(pattern, str) or not pattern:
        raise Refused("matchPattern must be a regular expression")
    try:
        # A pattern that backtracks without end shows it on a long near miss.
        for probe in (name, f"{name[-1] * 200}!", f"{name * 20}!", f"{'a' * 200}!"):
            regex.search(pattern, probe, timeout=MATCH_SECONDS)
    except TimeoutError:
        raise Refused("matchPattern takes too long: nested repeats?") from None
    except (regex.error, RecursionError, OverflowError, MemoryError) as error:
        raise Refused(f"matchPattern is not a regular expression: {error}") from None
    return pattern


def _prices_of(body: Mapping[str, Any]) -> dict[str, Decimal]:
    asked = {side: body.get(f"{side}Price") for side in SIDES}
    given = {side: price for side, price in asked.items() if price is not None}
    if "total" in given and len(given) > 1:
        raise Refused("totalPrice cannot be given beside inputPrice or outputPrice")
    if not given or not all(_is_price(price) for price in given.values()):
        raise Refused("a model needs at least one price; each is a number of USD, 0 or more")
    return {bucket: Decimal(str(price)) for bucket, price in given.items()}


def _is_price(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9
