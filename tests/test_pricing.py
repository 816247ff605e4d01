"""The price table against other sources, and the arithmetic against a real Langfuse."""

import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import pytest
from genai_prices import Usage, calc_price

from common import pricing
from common.pricing import PRICES, Price, cost_of, unpriced_buckets, usage_buckets
from local_langfuse.differences import reasons

KINDS = {  # a price in genai-prices, and the buckets that have it here
    "input_mtok": "input input_tokens input_text_tokens",
    "cache_read_mtok": "input_cached_tokens cache_read_input_tokens input_cache_read",
    "cache_write_mtok": "input_cache_write_tokens cache_creation_input_tokens input_cache_creation"
    " input_cache_creation_5m cache_creation.ephemeral_5m_input_tokens",
    "cache_write_1h_mtok": "input_cache_creation_1h cache_creation.ephemeral_1h_input_tokens",
    "output_mtok": "output output_tokens output_text_tokens",
}
PROVIDERS = {"claude": "anthropic", "gemini": "google"}
GONE = {"gpt-4.1-nano", "o4-mini", "o3-mini", "o1", "gpt-4-turbo", "gpt-4", "gpt-3.5-turbo"}


def read(text: str) -> dict[str, Any]:
    """Return counts or USD by name: `read("input 5 output 0.1") -> {"input": 5, "output": …}`."""
    words = text.split()
    return dict(zip(words[::2], map(Decimal, words[1::2]), strict=True))


def counts(text: str) -> dict[str, Any]:
    return {name: int(count) for name, count in read(text).items()}


CHAT = counts("prompt_tokens 2000 completion_tokens 100 total_tokens 2100")
RESPONSES = counts("input_tokens 2000 output_tokens 100 total_tokens 2100")
INTO = {"cached_tokens": 512, "cache_write_tokens": 256, "audio_tokens": None}
OUT = {"reasoning_tokens": 20}
TOO_MUCH = {**CHAT, "completion_tokens": -1, "prompt_tokens_details": {"cached_tokens": 2001}}
BOTH = counts("input 1232 output 80")
SPLIT = BOTH | counts("input_cached_tokens 512 input_cache_write_tokens 256 total 2100")
SPLIT["output_reasoning_tokens"] = 20
LANGCHAIN = BOTH | counts("input_cache_read 512 input_cache_creation 256 output_reasoning 20")
CLAUDE = counts("input_tokens 100 cache_creation_input_tokens 10000 output_tokens 50")
CLAUDE |= counts("cache_read_input_tokens 2000")


@pytest.mark.parametrize("price", PRICES, ids=lambda price: price.model)
def test_every_price_is_the_one_in_genai_prices_and_none_is_missing(price: Price) -> None:
    provider = PROVIDERS.get(price.model.partition("-")[0], "openai")
    listed: Any = calc_price(Usage(), price.model, provider_id=provider).model_price
    known = {kind: usd for kind in KINDS if (usd := getattr(listed, kind)) is not None}
    tiers = {kind: getattr(usd, "tiers", ()) for kind, usd in known.items()}
    steps = {0, *(price.long_prompt or ())[:1], *(t.start for kind in known for t in tiers[kind])}
    for tokens in sorted(steps | {step + 1 for step in steps}):
        ours = {bucket: usd * 1_000_000 for bucket, usd in price.per_token(tokens).items()}
        theirs: dict[str, Decimal] = {}
        for kind, usd in known.items():
            reached = [tier.price for tier in tiers[kind] if tier.start < tokens]
            rate = reached[-1] if reached else getattr(usd, "base", usd)
            theirs |= dict.fromkeys(KINDS[kind].split(), rate)
        if reasons(price.model):  # billed as output
            theirs["output_reasoning_tokens"] = theirs["output_reasoning"] = theirs["output"]
        if price.model.startswith("text-embedding-"):
            theirs = {"total": theirs["input"]}
        assert ours == theirs, f"a prompt of {tokens}: ours {ours}, genai-prices {theirs}"


def test_shut_down_dates_are_those_that_openai_announced_and_no_model_is_gone() -> None:
    source = Path(openai.__file__).with_name("types") / "shared/chat_model.py"
    named, deprecated = source.read_text(encoding="utf-8").split('"""Deprecated values:')
    entries = re.findall(r'("[^:]+"):\s+Announced\s+shutdown\s+date:\s+([\d-]+)', deprecated)
    dates = {name: day for names, day in entries for name in re.findall(r'"([^"]+)"', names)}
    assert {dates[model] for model in GONE} == {"2026-10-23"}
    models = {price.model: price.shut_down for price in PRICES}
    assert len(models) == len(PRICES), "each of them once"
    assert GONE.isdisjoint(models)
    ours = {model: day for model, day in models.items() if f'"{model}"' in named}
    assert len(ours) == 9, "OpenAI's own models for chats"
    for model, day in ours.items():
        assert (day and str(day)) == dates.get(model), model


def test_a_model_is_found_under_each_of_its_names() -> None:
    for name in ("openai/gpt-4o-mini", "GPT-4o-mini-2024-07-18"):
        assert pricing.undated(name) == "gpt-4o-mini"
    bedrock = "us.anthropic.claude-haiku-4-5-20251001-v1:0"
    for name in ("anthropic/claude-haiku-4-5", bedrock, "claude-haiku-4-5@20251001"):
        assert pricing.undated(name) == "claude-haiku-4-5"
    assert pricing.price_of("google/Gemini-3-flash-preview") in PRICES


@pytest.mark.parametrize(
    ("reported", "split"),
    [
        ({**CHAT, "prompt_tokens_details": INTO, "completion_tokens_details": OUT}, SPLIT),
        ({**RESPONSES, "input_tokens_details": INTO, "output_tokens_details": OUT}, SPLIT),
        ({**CHAT, "prompt_tokens_details": None}, counts("input 2000 output 100 total 2100")),
        ({"prompt_tokens": 9, "total_tokens": 9}, counts("input 9 total 9")),
        (LANGCHAIN, {**LANGCHAIN, "total": 2100}),
        ({**CLAUDE, "cache_creation": None}, {**CLAUDE, "total": 12_150}),
        (TOO_MUCH, counts("input 0 input_cached_tokens 2001 total 2100")),
        ({"prompt_tokens": -9, "total_tokens": -9}, {}),
        ({**dict.fromkeys(CHAT), "prompt_tokens_details": 5}, {}),
        ({"input": "9", "output": float("inf"), "my_bucket": True, "other": 1.5}, {}),
    ],
)
def test_buckets_do_not_overlap(reported: dict[str, Any], split: dict[str, int]) -> None:
    assert usage_buckets(reported) == split


def test_what_anthropic_has_written_to_a_cache_is_counted_once() -> None:
    parts = {"ephemeral_5m_input_tokens": 6000, "ephemeral_1h_input_tokens": 4000}
    more = {"server_tool_use": {"web_search_requests": 3}, "service_tier": "standard"}
    reported = {**CLAUDE, **more, "cache_creation": parts, "inference_geo": None}
    named = {f"cache_creation.{part}": count for part, count in parts.items()}
    whole = {**CLAUDE, "cache_creation_input_tokens": 0, "total": 12_150}
    assert usage_buckets(reported) == {**whole, **named}
    # Of 10,000 tokens 4,000 cost $2 per million instead of $1.25.
    assert cost_of("claude-haiku-4-5", reported) == Decimal("0.01305") + Decimal("0.003")


COSTS = {  # the first four as Langfuse 4.16 stored them
    "gpt-4o-mini: input 1000 output 500 my_bucket 300": "input 0.00015 output 0.0003 total 0.00045",
    "gpt-4o-mini: input 0 output 0": "input 0 output 0 total 0",
    "text-embedding-3-small: input 9": "total 0.00000018",
    "claude-haiku-4-5: input 10 output 5 input_cached_tokens 50 "
    "input_cache_creation_5m 100 input_cache_creation_1h 200": (
        "input 0.00001 output 0.000025 input_cached_tokens 0.000005 "
        "input_cache_creation_5m 0.000125 input_cache_creation_1h 0.0004 total 0.000565"
    ),
    "claude-haiku-4-5: input_tokens 100 cache_creation_input_tokens 10000 "
    "cache_read_input_tokens 2000 output_tokens 50": (
        "input_tokens 0.0001 cache_creation_input_tokens 0.0125 cache_read_input_tokens 0.0002 "
        "output_tokens 0.00025 total 0.01305"
    ),
    "gpt-6-luna: input 272000": "input 0.0272 total 0.0272",
    "gpt-6-luna: input 1001 input_cached_tokens 200000 input_cache_write_tokens 71000 output 1": (
        "input 0.0002002 input_cached_tokens 0.004 input_cache_write_tokens 0.01775 "
        "output 0.00000075 total 0.02195095"
    ),
}


@pytest.mark.parametrize("call", COSTS)
def test_a_call_costs_exactly_this(call: str) -> None:
    model, usage = call.split(": ")
    expected = read(COSTS[call])
    assert cost_of(model, counts(usage)) == expected["total"]


def test_names_of_the_same_tokens_cost_the_same_and_openai_s_cache_writes_a_quarter_more() -> None:
    assert cost_of("gpt-6-luna", SPLIT) == cost_of("gpt-6-luna", LANGCHAIN) == Decimal("0.00021032")
    for price in PRICES:
        usd = price.usd_per_million
        if price.model.startswith(("gpt-6", "gpt-5.6")):
            assert usd["input_cache_write_tokens"] == usd["input"] * Decimal("1.25")


def test_a_cost_that_is_unknown_is_none_and_not_0() -> None:
    for model in ("shop-topics", "gpt-4o-mini-tts", "ft:gpt-4o", "ft:gpt-4o-2024-08-06:a::1"):
        assert cost_of(model, {"input": 5}) is None, model
    for usage in ("", "my_bucket 5", "total 5", "input 0 output 0 input_audio_tokens 5"):
        assert cost_of("gpt-4o-mini", counts(usage)) is None, usage


def test_buckets_with_tokens_but_no_price_are_named() -> None:
    missing = ["input_cache_write_tokens", "output_reasoning_tokens"]
    assert unpriced_buckets("gpt-4o-mini", {**SPLIT, "output_audio_tokens": 0}) == missing
    assert unpriced_buckets("gpt-6-luna", SPLIT) == []
    assert unpriced_buckets("shop-topics", {"input": 5, "output": 0}) == ["input"]
    assert unpriced_buckets("text-embedding-3-small", {"input": 9}) == []
