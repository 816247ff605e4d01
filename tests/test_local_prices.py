"""What `local_langfuse` says a call costs; the values are those of a real Langfuse 4.16."""

import ast
import json
import subprocess
import sys
from datetime import date
from typing import Any

import httpx
import pytest
from conftest import TOP

from local_langfuse import prices

SPANS = "/api/public/otel/v1/traces"
OBSERVATIONS = "/api/public/v2/observations"
MODELS = "/api/public/models"
START = 1_795_198_770_000_000_000  # 2026-11-20T18:19:30Z, in nanoseconds
SONNET = "claude-sonnet-4-5-20250929"
Usage = dict[str, Any]


def send(client: httpx.Client, *calls: tuple[str, Usage], **attributes: str) -> dict[str, Any]:
    """Store one generation per call, a model and its usage."""
    spans = []
    for number, (model, usage) in enumerate(calls, start=1):
        named = {"model.name": model, "usage_details": json.dumps(usage), **attributes}
        spans.append(
            {
                "traceId": "0af7651916cd43dd8448eb211c80319c",
                "spanId": f"{number:016x}",
                "name": f"call-{number:03}",
                "startTimeUnixNano": str(START + number),
                "attributes": [
                    {"key": f"langfuse.observation.{key}", "value": {"stringValue": value}}
                    for key, value in named.items()
                ],
            }
        )
    answer = client.post(SPANS, json={"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def stored(client: httpx.Client, *filters: dict[str, Any]) -> list[dict[str, Any]]:
    query: dict[str, Any] = {"fields": "core,basic,model,usage", "limit": 100}
    query["filter"] = json.dumps(filters)
    answer = client.get(OBSERVATIONS, params=query)
    assert answer.status_code == 200, answer.text
    return sorted(answer.json()["data"], key=lambda row: str(row["name"]))


def priced(client: httpx.Client, model: str, usage: Usage) -> dict[str, float]:
    assert send(client, (model, usage)) == {}
    (row,) = stored(client)
    costs: dict[str, float] = row["costDetails"]
    return costs


OPENAI_CHAT = {
    "prompt_tokens": 2000,
    "completion_tokens": 100,
    "total_tokens": 2100,
    "prompt_tokens_details": {"cached_tokens": 512, "cache_write_tokens": 256},
    "completion_tokens_details": None,
}
OPENAI_RESPONSES = {
    "input_tokens": 2000,
    "output_tokens": 100,
    "total_tokens": 2100,
    "input_tokens_details": {"cached_tokens": 1024},
    "output_tokens_details": {"reasoning_tokens": 64},
}
CLAUDE = {
    "input_tokens": 100,
    "cache_creation_input_tokens": 10_000,
    "cache_read_input_tokens": 2_000,
    "output_tokens": 50,
}
BY_LIFETIME = {"ephemeral_5m_input_tokens": 9_000, "ephemeral_1h_input_tokens": 1_000}


@pytest.mark.parametrize(
    ("model", "usage", "costs"),
    [
        ("gpt-4o-mini", {"input": 1000, "output": 100}, {"input": 0.00015, "output": 0.00006}),
        (
            "gpt-4o-mini",
            OPENAI_CHAT,
            {"input": 0.0001848, "output": 6e-05, "input_cached_tokens": 3.84e-05},
        ),
        (
            "gpt-5-mini",
            OPENAI_RESPONSES,
            {
                "input": 0.000244,
                "output": 7.2e-05,
                "input_cached_tokens": 2.56e-05,
                "output_reasoning_tokens": 0.000128,
            },
        ),
        (
            SONNET,
            CLAUDE,
            {
                "input_tokens": 0.0003,
                "cache_creation_input_tokens": 0.0375,
                "cache_read_input_tokens": 0.0006,
                "output_tokens": 0.00075,
            },
        ),
        (
            SONNET,
            {"input": 100, "output": 50, "input_cache_creation": 10_000, "input_cache_read": 2000},
            {
                "input": 0.0003,
                "output": 0.00075,
                "input_cache_creation": 0.0375,
                "input_cache_read": 0.0006,
            },
        ),
        (
            "claude-haiku-4-5",
            {
                "input_cache_creation_5m": 100,
                "input_cache_creation_1h": 200,
                "input_cached_tokens": 50,
            },
            {
                "input_cache_creation_5m": 0.000125,
                "input_cache_creation_1h": 0.0004,
                "input_cached_tokens": 5e-06,
            },
        ),
        (
            "gpt-6-luna",
            {"input": 1000, "input_cache_write_tokens": 1000, "output": 1000},
            {"input": 1e-4, "input_cache_write_tokens": 1.25e-4, "output": 5e-4},
        ),
        ("gpt-realtime", {"input_audio_tokens": 1000}, {"input_audio_tokens": 0.032}),
    ],
)
def test_each_bucket_has_the_price_of_its_kind(
    model: str, usage: Usage, costs: dict[str, float], client: httpx.Client
) -> None:
    total = sum(costs.values())
    assert priced(client, model, usage) == pytest.approx({**costs, "total": total})


def test_cache_writes_by_lifetime_are_not_counted_twice(client: httpx.Client) -> None:
    nested = {**CLAUDE, "cache_creation": BY_LIFETIME}
    flat = {**CLAUDE, **{f"cache_creation.{key}": count for key, count in BY_LIFETIME.items()}}
    send(client, (SONNET, nested), (SONNET, flat))
    for row in stored(client):
        assert row["usageDetails"]["cache_creation_input_tokens"] == 0
        assert row["usageDetails"]["total"] == 12_150
        written = (9_000 * 3.75 + 1_000 * 6) / 1e6
        assert row["totalCost"] == pytest.approx(0.0003 + 0.0006 + 0.00075 + written)


@pytest.mark.parametrize(
    ("model", "usage", "total"),
    [
        ("gpt-6-luna", {"input": 272_000, "output": 100}, 0.0272 + 0.00005),
        ("gpt-6-luna", {"input": 272_001, "output": 100}, 272_001 * 2e-7 + 0.000075),
        ("gpt-6-luna", {"input": 2_000, "input_cached_tokens": 271_000}, 0.0004 + 0.00542),
        ("gemini-2.5-pro", {"input": 250_000, "output": 100}, 0.6265),
        ("claude-sonnet-4-5", {"input": 210_000, "output": 1000}, 0.645),  # flat in Langfuse
    ],
)
def test_a_long_prompt_costs_what_its_tier_says(
    model: str, usage: Usage, total: float, client: httpx.Client
) -> None:
    assert priced(client, model, usage)["total"] == pytest.approx(total)


@pytest.mark.parametrize(
    ("model", "dollars"),
    [
        *((name, 0.00021) for name in ("gpt-4o-mini", "openai/gpt-4o-mini", "GPT-4o-mini")),
        ("gpt-4o-2024-08-06", 0.0035),
        ("anthropic/claude-sonnet-4-5", 0.0045),
        ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", 0.0045),
        ("anthropic.claude-haiku-4-5-20251001-v1:0", 0.0015),
        *((name, None) for name in ("ft:gpt-4o-mini-2024-07-18:acme::abc", "house-13b")),
        *((name, None) for name in ("gpt-oss-120b", "openai/gpt-oss-20b", "deepseek-r1:8b")),
        *((name, None) for name in ("my-claude-sonnet-4-5", "notgpt-4o-mini", "gpt-4o-mini-2")),
    ],
)
def test_a_name_is_known_as_langfuse_knows_it(
    model: str, dollars: float | None, client: httpx.Client
) -> None:
    costs = priced(client, model, {"input": 1000, "output": 100})
    assert costs.get("total") == (dollars and pytest.approx(dollars))


def test_a_name_of_any_length_is_answered_and_not_kept(client: httpx.Client) -> None:
    kept = prices._list_price.cache_info().currsize
    assert priced(client, "gpt-4o-mini" * 10_000, {"input": 1000}) == {}
    assert prices._list_price.cache_info().currsize == kept


def test_an_embedding_has_one_price_for_all_its_tokens(client: httpx.Client) -> None:
    names = ("text-embedding-3-small", "text-embedding-3-large")
    raw = {"prompt_tokens": 1000, "total_tokens": 1000}
    send(client, *((name, {"input": 1000}) for name in names), (names[0], raw))
    costs = [row["costDetails"] for row in stored(client)]
    assert costs == [{"total": 0.00002}, {"total": 0.00013}, {"total": 0.00002}]


def test_reasoning_has_a_price_where_the_model_reasons(client: httpx.Client) -> None:
    usage = {"output": 1000, "output_reasoning_tokens": 1000}
    models = ("gpt-5-mini", "o4-mini", "gpt-6-luna", "gpt-4o-mini", "gpt-4.1", SONNET)
    send(client, *((model, usage) for model in models))
    reasoned = ["output_reasoning_tokens" in row["costDetails"] for row in stored(client)]
    assert reasoned == [True, True, True, False, False, False]


def test_a_bucket_without_a_price_is_seen_to_have_none(client: httpx.Client) -> None:
    usage = {"input": 10, "output": 5, "input_cache_creation": 100_000, "strange_tokens": 7}
    send(client, ("gpt-4o-mini", usage))
    (row,) = stored(client)
    assert row["usageDetails"] == {**usage, "total": 100_022}
    assert row["costDetails"] == {"input": 1.5e-6, "output": 3e-6, "total": 4.5e-6}


def test_an_unknown_cost_is_null_and_no_cost_is_zero(client: httpx.Client) -> None:
    calls = [
        ("gpt-4o-mini", {"input": 0, "output": 0}),
        ("gpt-4o-mini", {"strange_tokens": 1000}),
        ("gpt-4o-mini", {"total": 100}),
        ("gpt-4o-mini", {}),
        ("house-13b", {"input": 0}),
        ("gpt-4o-mini", {"input": 100}),
    ]
    send(client, *calls)
    zero, *unknown, known = stored(client)
    assert zero["costDetails"] == {"input": 0, "output": 0, "total": 0}
    assert [row["costDetails"] for row in unknown] == [{}] * 4
    column = {"type": "number", "column": "totalCost"}
    none = {"type": "null", "column": "totalCost", "operator": "is null", "value": ""}
    assert [row["id"] for row in stored(client, none)] == [row["id"] for row in unknown]
    for operator, value, rows in (
        ("=", 0, [zero]),
        ("<=", 0, [zero]),
        ("<", 1, [zero, known]),
        (">", 0, [known]),
    ):
        found = stored(client, {**column, "operator": operator, "value": value})
        assert [row["id"] for row in found] == [row["id"] for row in rows]


@pytest.mark.parametrize(
    ("usage", "buckets"),
    [
        ({"input": "12", "output": " 7 "}, {"input": 12, "output": 7, "total": 19}),
        ({"input": 12.0, "output": 2}, {"input": 12, "output": 2, "total": 14}),
        ({"input": -5, "output": 10}, {"output": 10, "total": 10}),
        ({"input": 1.5, "output": "2.5", "total": 9}, {"total": 9}),
        ({"input": True, "output": None, "x": [1], "y": {"z": 1}, "v": "1_0", "w": "٣"}, {}),
        (
            {"prompt_tokens": "x", "completion_tokens": 1, "total_tokens": 1},
            {"output": 1, "total": 1},
        ),
        (
            {
                "prompt_tokens": 1,
                "completion_tokens": 1,
                "total_tokens": 2,
                "prompt_tokens_details": [1],
            },
            {"input": 1, "output": 1, "total": 2},
        ),
        (OPENAI_RESPONSES, {"input": 976, "output": 36, "total": 2100,
                            "input_cached_tokens": 1024, "output_reasoning_tokens": 64}),
        ({"prompt_tokens": 9, "total_tokens": 9}, {"input": 9, "total": 9}),
        (CLAUDE, {**CLAUDE, "total": 12_150}),
    ],
)  # fmt: skip
def test_usage_is_read_as_langfuse_reads_it(
    usage: Usage, buckets: dict[str, int], client: httpx.Client
) -> None:
    assert send(client, ("gpt-4o-mini", usage)) == {}
    (row,) = stored(client)
    assert row["usageDetails"] == buckets


TIERED: dict[str, Any] = {
    "modelName": "ck-tiered",
    "matchPattern": "(?i)^ck-tiered$",
    "unit": "TOKENS",
    "pricingTiers": [
        {
            "name": "Standard",
            "isDefault": True,
            "priority": 0,
            "conditions": [],
            "prices": {"input": 1e-06, "output": 4e-06, "cache_read_input_tokens": 1e-07},
        },
        {
            "name": "Large",
            "isDefault": False,
            "priority": 1,
            "conditions": [{"usageDetailPattern": "^INPUT", "operator": "gt", "value": 1000}],
            "prices": {"input": 2e-06, "output": 6e-06, "cache_read_input_tokens": 2e-07},
        },
    ],
}


def own(pattern: str, **prices: float) -> dict[str, Any]:
    return {"modelName": "own", "matchPattern": pattern, "unit": "TOKENS", **prices}


def test_own_prices_win_and_the_list_prices_come_back_without_them(client: httpx.Client) -> None:
    made = client.post(MODELS, json=own("^gpt-4o-mini$", inputPrice=1e-3)).json()
    usage = {"input": 10, "output": 10}
    assert priced(client, "gpt-4o-mini", usage) == {"input": 0.01, "total": 0.01}
    (row,) = stored(client)
    assert row["internalModelId"] == made["id"]
    assert client.delete(f"{MODELS}/{made['id']}").status_code == 204
    assert priced(client, "gpt-4o-mini", usage)["total"] == pytest.approx(7.5e-6)


def test_an_own_price_holds_from_its_start(client: httpx.Client) -> None:
    later = own("^gpt-4o-mini$", inputPrice=1e-3) | {"startDate": "2026-11-21T00:00:00Z"}
    assert client.post(MODELS, json=later).status_code == 200
    assert priced(client, "gpt-4o-mini", {"input": 10}) == {"input": 1.5e-6, "total": 1.5e-6}
    earlier = {**later, "startDate": "2026-11-20T00:00:00Z"}
    assert client.post(MODELS, json=earlier).status_code == 200
    assert priced(client, "gpt-4o-mini", {"input": 10}) == {"input": 0.01, "total": 0.01}


def test_an_own_price_for_all_tokens_is_the_total(client: httpx.Client) -> None:
    assert client.post(MODELS, json=own("^ck-total$", totalPrice=1e-5)).status_code == 200
    send(client, ("ck-total", {"input": 10, "output": 5}), ("ck-total", {"total": 100}))
    assert [row["costDetails"] for row in stored(client)] == [{"total": 0.00015}, {"total": 0.001}]


def test_own_tiers_hold_by_what_was_used(client: httpx.Client) -> None:
    made = client.post(MODELS, json=TIERED).json()
    assert [tier["name"] for tier in made["pricingTiers"]] == ["Standard", "Large"]
    assert made["inputPrice"] == 1e-6
    assert client.get(MODELS).json()["data"][0] == made
    usage = {"output": 10, "cache_read_input_tokens": 50}
    calls = [("ck-tiered", {"input": count, **usage}) for count in (400, 1000, 1400)]
    send(client, *calls)
    totals = [row["totalCost"] for row in stored(client)]
    assert totals == pytest.approx([0.000445, 0.001045, 0.00287])


@pytest.mark.parametrize(
    ("change", "total"),
    [
        ({"usageDetailPattern": "(?i)^INPUT"}, 0.0028),
        ({"caseSensitive": True}, 0.0014),
        ({"operator": "gte", "value": 1400}, 0.0028),
        ({"operator": "lt", "value": 1400}, 0.0014),
        ({"operator": "lte", "value": 1400}, 0.0028),
        ({"operator": "eq", "value": 1400}, 0.0028),
        ({"operator": "neq", "value": 1400}, 0.0014),
    ],
)
def test_a_condition_is_read_as_it_was_set(
    change: dict[str, Any], total: float, client: httpx.Client
) -> None:
    large = {**LARGE, "conditions": [{**CONDITION, **change}]}
    body = {**TIERED, "pricingTiers": [STANDARD, large]}
    assert client.post(MODELS, json=body).status_code == 200
    assert priced(client, "ck-tiered", {"input": 1400})["total"] == pytest.approx(total)


STANDARD, LARGE = TIERED["pricingTiers"]
CONDITION = LARGE["conditions"][0]


BAD_CONDITIONS: list[dict[str, Any]] = [
    {"operator": "near"},
    {"operator": []},
    {"value": "1000"},
    {"usageDetailPattern": "("},
    {"usageDetailPattern": None},
    {"usageDetailPattern": r"(?:(\w+)(\w+)\2\1)+\d!"},
]


@pytest.mark.parametrize(
    "tiers",
    [
        5,
        [],
        [5],
        [LARGE],
        [STANDARD, STANDARD],
        [{**STANDARD, "conditions": [CONDITION]}],
        [STANDARD, {**LARGE, "conditions": []}],
        [STANDARD, {**LARGE, "prices": {"input": 2e-06, "output": 6e-06}}],
        [{**STANDARD, "prices": {}}],
        [{**STANDARD, "prices": {"input": -1}}],
        [{**STANDARD, "name": ""}],
        [{**STANDARD, "priority": "first"}],
        *([STANDARD, {**LARGE, "conditions": [{**CONDITION, **bad}]}] for bad in BAD_CONDITIONS),
    ],
)
def test_bad_tiers_are_refused(tiers: Any, client: httpx.Client) -> None:
    answer = client.post(MODELS, json={**TIERED, "pricingTiers": tiers})
    assert answer.status_code == 400, answer.text
    assert answer.json()["message"]
    both = client.post(MODELS, json={**TIERED, "inputPrice": 1e-6})
    assert both.status_code == 400


def test_a_slow_pattern_of_an_own_model_does_not_hold_up_a_batch(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = []

    def times_out(pattern: str, text: str, _: int, **__: float) -> None:
        searched.append((pattern, text))
        raise TimeoutError

    client.post(MODELS, json=own("^slow$", inputPrice=1e-3))
    monkeypatch.setattr("local_langfuse.prices.regex.search", times_out)
    for batch in (1, 2):  # asked once per batch, and again in the next one
        send(client, *[("gpt-4o-mini", {"input": 1000})] * 50)
        assert searched == [("^slow$", "gpt-4o-mini")] * batch
    assert {row["totalCost"] for row in stored(client)} == {0.00015}


def test_the_models_with_a_list_price_are_listed_page_by_page(client: httpx.Client) -> None:
    client.post(MODELS, json=own("^mine$", inputPrice=1e-3))
    first = client.get(MODELS, params={"limit": 100}).json()
    rows, meta = first["data"], first["meta"]
    for page in range(2, meta["totalPages"] + 1):
        rows += client.get(MODELS, params={"limit": 100, "page": page}).json()["data"]
    assert len(rows) == meta["totalItems"] > 100
    assert [row["isLangfuseManaged"] for row in rows] == [False] + [True] * (len(rows) - 1)
    listed = {row["modelName"]: row for row in rows}
    assert len(listed) == len(rows)
    assert listed["gpt-4o-mini"]["prices"]["input"] == {"price": 1.5e-7}
    assert listed["text-embedding-3-small"]["totalPrice"] == 2e-8
    standard, large = listed["gpt-6-luna"]["pricingTiers"]
    assert (standard["isDefault"], standard["conditions"]) == (True, [])
    assert large["conditions"][0]["value"] == 272_000
    assert large["prices"]["input"] == 2 * standard["prices"]["input"]
    assert all(row["prices"] for row in rows)


def test_a_price_that_changed_is_the_one_of_the_day() -> None:
    before, after = (prices.list_price("o3", date(2025, month, 1)) for month in (5, 12))
    assert before is not None
    assert after is not None
    assert before.tiers[-1].prices["input"] > after.tiers[-1].prices["input"]


def test_local_langfuse_imports_nothing_from_common() -> None:
    for path in (TOP / "local_langfuse").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not any(name.partition(".")[0] == "common" for name in names), path


def test_the_server_starts_without_common_and_loads_the_price_list_when_it_prices(
    tmp_path: Any,
) -> None:
    script = """
import pathlib, sys
import local_langfuse.server
print({"genai_prices", "common"} & {*sys.modules})
import httpx
server = local_langfuse.start(pathlib.Path(sys.argv[1]))
auth, spans = ("pk-lf-local", "sk-lf-local"), [{"traceId": "1" * 32, "startTimeUnixNano": "1"}]
for number, model in enumerate(("", "gpt-4o-mini"), start=1):
    named = {"model.name": model, "usage_details": '{"input": 1}'}
    spans[0]["spanId"] = f"{number:016x}"
    spans[0]["attributes"] = [
        {"key": f"langfuse.observation.{key}", "value": {"stringValue": value}}
        for key, value in named.items()
    ]
    httpx.post(
        f"{server.base_url}/api/public/otel/v1/traces",
        json={"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}, auth=auth, trust_env=False,
    ).raise_for_status()
    print("genai_prices" in sys.modules)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "langfuse.db")]
    ran = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.stderr) == ("set()\nFalse\nTrue\n", "")
