"""The price table against a second source, and the arithmetic against a real Langfuse."""

from decimal import Decimal
from typing import Any

import pytest
from genai_prices import Usage, calc_price
from genai_prices.types import TieredPrices

from common.pricing import PRICES, Price, cost_by_bucket, cost_of, price_of, undated, usage_buckets

# Usage as OpenAI reports it, and the buckets Langfuse 4.16 made of it.
REPORTED = {
    "completion_tokens": 120,
    "prompt_tokens": 1800,
    "total_tokens": 1920,
    "completion_tokens_details": {
        "accepted_prediction_tokens": 0,
        "audio_tokens": 0,
        "reasoning_tokens": 20,
        "rejected_prediction_tokens": 0,
    },
    "prompt_tokens_details": {"audio_tokens": 0, "cached_tokens": 1024},
}
STORED = {
    "input": 776,
    "output": 100,
    "total": 1920,
    "input_audio_tokens": 0,
    "input_cached_tokens": 1024,
    "output_accepted_prediction_tokens": 0,
    "output_audio_tokens": 0,
    "output_reasoning_tokens": 20,
    "output_rejected_prediction_tokens": 0,
}
CLAUDE = {"input": 100, "output": 50, "cache_read_input_tokens": 900}
UNPRICED = {"input": 1000, "output": 500, "my_bucket": 300}

# The same calls as Langfuse 4.16 stored them: model, usage, cost by bucket.
RECORDED_COSTS: list[tuple[str, dict[str, Any], dict[str, str]]] = [
    (
        "gpt-4o-mini-2024-07-18",
        REPORTED,
        {
            "input": "0.0001164",
            "output": "0.00006",
            "input_cached_tokens": "0.0000768",
            "total": "0.0002532",
        },
    ),
    (
        "gpt-4o",
        REPORTED,
        {
            "input": "0.00194",
            "output": "0.001",
            "input_cached_tokens": "0.00128",
            "total": "0.00422",
        },
    ),
    (
        "claude-sonnet-4-5",
        CLAUDE,
        {
            "input": "0.0003",
            "output": "0.00075",
            "cache_read_input_tokens": "0.00027",
            "total": "0.00132",
        },
    ),
    ("gpt-4o-mini", UNPRICED, {"input": "0.00015", "output": "0.0003", "total": "0.00045"}),
    ("gpt-4o-mini", {"input": 0, "output": 0}, {"input": "0", "output": "0", "total": "0"}),
    ("text-embedding-3-small", {"input": 9}, {"total": "0.00000018"}),
    ("text-embedding-3-small", {"prompt_tokens": 9, "total_tokens": 9}, {"total": "0.00000018"}),
]


def second_opinion(price: Price) -> dict[str, Decimal | None]:
    """Return what genai-prices charges for the same buckets, below its long-prompt tiers."""
    provider = "anthropic" if price.model.startswith("claude") else "openai"
    theirs = calc_price(Usage(), price.model, provider_id=provider).model_price
    fields = {
        "input": theirs.input_mtok,
        "input_cached_tokens": theirs.cache_read_mtok,
        "input_cache_read": theirs.cache_read_mtok,
        "cache_read_input_tokens": theirs.cache_read_mtok,
        "output": theirs.output_mtok,
        "output_reasoning_tokens": theirs.output_mtok,
        "output_reasoning": theirs.output_mtok,
        "total": theirs.input_mtok,
    }
    asked = {bucket: fields[bucket] for bucket in price.usd_per_million}
    return {k: v.base if isinstance(v, TieredPrices) else v for k, v in asked.items()}


@pytest.mark.parametrize("price", PRICES, ids=lambda price: price.model)
def test_price_agrees_with_genai_prices(price: Price) -> None:
    theirs = second_opinion(price)
    assert price.usd_per_million == theirs, f"{price.model}: ours {price}, theirs {theirs}"


@pytest.mark.parametrize("price", PRICES, ids=lambda price: price.model)
def test_no_model_lacks_a_cache_price_that_genai_prices_knows(price: Price) -> None:
    provider = "anthropic" if price.model.startswith("claude") else "openai"
    theirs = calc_price(Usage(), price.model, provider_id=provider).model_price
    assert ("input_cached_tokens" in price.usd_per_million) == (theirs.cache_read_mtok is not None)


def test_the_names_that_langchain_gives_to_buckets_cost_the_same() -> None:
    openai = {"input": 130, "input_cached_tokens": 1536, "output": 9, "output_reasoning_tokens": 6}
    langchain = {"input": 130, "input_cache_read": 1536, "output": 9, "output_reasoning": 6}
    for model in ("gpt-4o-mini", "gpt-5"):
        assert cost_of(model, langchain) == cost_of(model, openai)


def test_each_model_stands_in_the_table_once() -> None:
    models = [price.model for price in PRICES]
    assert len(models) == len(set(models))


def test_usage_is_split_into_the_buckets_langfuse_stored() -> None:
    assert usage_buckets(REPORTED) == STORED


def test_usage_of_the_responses_api_is_split_the_same_way() -> None:
    reported = {
        "input_tokens": 1800,
        "output_tokens": 120,
        "total_tokens": 1920,
        "input_tokens_details": {"cached_tokens": 1024},
        "output_tokens_details": {"reasoning_tokens": 20},
    }
    assert usage_buckets(reported) == {key: count for key, count in STORED.items() if count}


def test_buckets_that_do_not_overlap_come_back_with_their_sum() -> None:
    assert usage_buckets(CLAUDE) == {**CLAUDE, "total": 1050}
    assert usage_buckets(UNPRICED) == {**UNPRICED, "total": 1800}


def test_details_that_are_missing_are_not_counted() -> None:
    reported = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
    none = {"prompt_tokens_details": None, "completion_tokens_details": {"audio_tokens": None}}
    assert usage_buckets({**reported, **none}) == {"input": 9, "output": 2, "total": 11}


@pytest.mark.parametrize(("model", "usage", "stored"), RECORDED_COSTS)
def test_cost_is_what_langfuse_stored(
    model: str, usage: dict[str, Any], stored: dict[str, str]
) -> None:
    assert cost_by_bucket(model, usage) == {key: Decimal(cost) for key, cost in stored.items()}
    assert cost_of(model, usage) == Decimal(stored["total"])


@pytest.mark.parametrize(
    "name",
    ["gpt-4o-mini", "gpt-4o-mini-2024-07-18", "openai/gpt-4o-mini", "GPT-4o-mini-20240718"],
)
def test_a_model_is_found_under_each_of_its_names(name: str) -> None:
    assert undated(name) == "gpt-4o-mini"
    price = price_of(name)
    assert price is not None
    assert price.model == "gpt-4o-mini"


@pytest.mark.parametrize("name", ["my-local-llm", "gpt-4o-mini-tts", "gpt-4", ""])
def test_the_cost_of_an_unknown_model_is_unknown(name: str) -> None:
    assert price_of(name) is None
    assert cost_by_bucket(name, {"input": 5}) is None
    assert cost_of(name, {"input": 5}) is None


def test_a_million_small_costs_add_up_exactly() -> None:
    one = cost_of("gpt-4o-mini", {"input": 1, "output": 1})
    assert one == Decimal("0.00000075")
    assert one * 1_000_000 == Decimal("0.75")
    assert sum([one] * 1_000, start=Decimal(0)) == Decimal("0.00075")
