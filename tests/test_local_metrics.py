"""The Metrics API of `local_langfuse`, against plain Python over the same random observations."""

import json
import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import httpx
import pytest
from conftest import client_of
from test_local_langfuse import SCORES, send

import local_langfuse

METRICS = "/api/public/v2/metrics"
FROM = datetime(2026, 11, 9, tzinfo=UTC)  # a Monday
DAYS = 12
EMPTY_DAY = 4
PERIOD = {
    "fromTimestamp": FROM.isoformat(),
    "toTimestamp": (FROM + timedelta(days=DAYS)).isoformat(),
}
COUNT = {"measure": "count", "aggregation": "count"}
COST = {"measure": "totalCost", "aggregation": "sum"}
Record = dict[str, Any]


def random_records() -> list[Record]:
    """Make observations: some without model, cost, user, tags, end or first token."""
    dice = random.Random(7)
    days = [day for day in range(DAYS) if day != EMPTY_DAY]
    records = []
    for number in range(4, 704):  # four to a trace
        start = FROM + timedelta(days=dice.choice(days), milliseconds=dice.randrange(86_400_000))
        latency = dice.choice([None, *[dice.randrange(1, 90_000) for _ in range(9)]])
        model = dice.choice([None, "gpt-4o", "gpt-4o-mini", "who-knows"])
        records.append(
            {
                "id": f"{number:016x}",
                "traceId": f"{number // 4:032x}",
                "isRootObservation": number % 4 == 0,
                "start": start,
                "name": dice.choice(["answer", "search"]),
                "level": dice.choice(["DEFAULT", "ERROR"]),
                "latency": latency,
                "timeToFirstToken": latency and dice.choice([None, dice.randrange(latency)]),
                "providedModelName": model,
                "userId": dice.choice([None, *"abcdefgh"]),
                "tags": tuple(sorted(dice.sample(["x", "y", "z"], dice.randrange(3)))),
                "inputTokens": dice.randrange(1000) if model else 0,
                "outputTokens": dice.randrange(300) if model else 0,
                "totalCost": dice.randrange(10**6) / 10**9 if model and model[0] == "g" else None,
                "scores": dice.choice([0, 0, 1, 3]),
            }
        )
    return records


RECORDS = random_records()


def nanoseconds(start: datetime, milliseconds: int) -> str:
    return str(
        ((start - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1) + milliseconds)
        * 10**6
    )


def span(record: Record) -> dict[str, Any]:
    first = record["timeToFirstToken"]
    observation = "langfuse.observation."
    values = {
        f"{observation}model.name": record["providedModelName"],
        f"{observation}level": record["level"],
        "user.id": record["userId"],
        "langfuse.trace.tags": json.dumps(record["tags"]),
        f"{observation}completion_start_time": first
        and (record["start"] + timedelta(milliseconds=first)).isoformat(),
        f"{observation}cost_details": record["totalCost"]
        and json.dumps({"total": record["totalCost"]}),
        f"{observation}usage_details": json.dumps(
            {"input": record["inputTokens"], "output": record["outputTokens"]}
        ),
    }
    root = (
        {}
        if record["isRootObservation"]
        else {"parentSpanId": f"{int(record['id'], 16) // 4 * 4:016x}"}
    )
    end = record["latency"] and {"endTimeUnixNano": nanoseconds(record["start"], record["latency"])}
    return {
        "traceId": record["traceId"],
        "spanId": record["id"],
        **root,
        "name": record["name"],
        "startTimeUnixNano": nanoseconds(record["start"], 0),
        **(end or {}),
        "attributes": [
            {"key": key, "value": {"stringValue": value}} for key, value in values.items() if value
        ],
    }


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    running = local_langfuse.start(tmp_path_factory.mktemp("metrics") / "langfuse.db")
    with client_of(running.base_url) as client:
        send(client, *map(span, RECORDS))
        scores = [
            {
                "name": "relevance",
                "value": number / 3,
                "traceId": record["traceId"],
                "observationId": record["id"],
                "timestamp": record["start"].isoformat(),
            }
            for record in RECORDS
            for number in range(record["scores"])
        ]
        assert client.post(SCORES, json=scores).status_code == 202
        yield client
    running.stop()


def ask(client: httpx.Client, **query: Any) -> list[Record]:
    body = {"view": "observations", **PERIOD, "metrics": [COUNT], **query}
    answer = client.get(METRICS, params={"query": json.dumps(body)})
    assert answer.status_code == 200, answer.text
    found: list[Record] = answer.json()["data"]
    return found


def grouped(key: Callable[[Record], Any], records: Iterable[Record]) -> dict[Any, list[Record]]:
    groups = defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    return groups


def seconds_between(record: Record, start_ms: int | None) -> int | None:
    """Count the whole seconds that begin while an observation runs, as Langfuse does."""
    if record["latency"] is None or start_ms is None:
        return None
    begin, end = (
        int((record["start"] + timedelta(milliseconds=ms)).timestamp())
        for ms in (start_ms, record["latency"])
    )
    return end - begin or None


def per_second(tokens: int, seconds: int | None) -> float | None:
    return None if seconds is None else tokens / seconds


MEASURES: dict[str, Callable[[Record], float | None]] = {
    "count": lambda _: 1,
    "latency": lambda r: r["latency"],
    "timeToFirstToken": lambda r: r["timeToFirstToken"],
    "streamingLatency": lambda r: (
        None if r["timeToFirstToken"] is None else r["latency"] - r["timeToFirstToken"]
    ),
    "inputTokens": lambda r: r["inputTokens"],
    "outputTokens": lambda r: r["outputTokens"],
    "totalTokens": lambda r: r["inputTokens"] + r["outputTokens"],
    "totalCost": lambda r: r["totalCost"] or 0,
    "inputCost": lambda _: 0,
    "outputCost": lambda _: 0,
    "outputTokensPerSecond": lambda r: per_second(
        r["outputTokens"], seconds_between(r, r["timeToFirstToken"])
    ),
    "tokensPerSecond": lambda r: per_second(
        r["inputTokens"] + r["outputTokens"], seconds_between(r, 0)
    ),
    "countScores": lambda r: r["scores"] or None,
}


def percentile(number: int) -> Callable[[list[float]], float]:
    return lambda values: statistics.quantiles(values, n=100, method="inclusive")[number - 1]


AGGREGATIONS: dict[str, Callable[[list[float]], float]] = {
    "sum": sum,
    "avg": statistics.fmean,
    "count": len,
    "max": max,
    "min": min,
    **{f"p{number}": percentile(number) for number in (50, 75, 90, 95, 99)},
}


@pytest.mark.parametrize("measure", MEASURES)
def test_every_measure_and_aggregation_by_model(measure: str, client: httpx.Client) -> None:
    asked = [{"measure": measure, "aggregation": aggregation} for aggregation in AGGREGATIONS]
    rows = ask(client, metrics=asked, dimensions=[{"field": "providedModelName"}])
    found = {row.pop("providedModelName"): row for row in rows}
    groups = grouped(lambda r: r["providedModelName"], RECORDS)
    assert found.keys() == groups.keys()
    for model, records in groups.items():
        values = [value for r in records if (value := MEASURES[measure](r)) is not None]
        expected = {f"{name}_{measure}": of(values) for name, of in AGGREGATIONS.items()}
        assert found[model] == pytest.approx(expected, rel=1e-9), model


def bucket_of(granularity: str) -> Callable[[datetime], str]:
    monday = timedelta(days=1)
    return {
        "minute": lambda t: f"{t:%Y-%m-%d %H:%M:00}",
        "hour": lambda t: f"{t:%Y-%m-%d %H:00:00}",
        "day": lambda t: f"{t:%Y-%m-%d}",
        "week": lambda t: f"{t - t.weekday() * monday:%Y-%m-%d}",
        "month": lambda t: f"{t:%Y-%m}-01",
    }[granularity]


@pytest.mark.parametrize(
    ("granularity", "step", "hours"),
    [
        ("minute", timedelta(minutes=1), 12),
        ("hour", timedelta(hours=1), 24 * DAYS),
        ("day", timedelta(days=1), 24 * DAYS),
        ("week", timedelta(days=7), 24 * DAYS),
        ("month", timedelta(days=28), 24 * 80),
    ],
)
def test_time_buckets_are_complete(
    granularity: str, step: timedelta, hours: int, client: httpx.Client
) -> None:
    start, end = FROM - timedelta(days=1, hours=-5), FROM + timedelta(hours=hours)
    query = {"fromTimestamp": start.isoformat(), "toTimestamp": end.isoformat()}
    rows = ask(
        client,
        **query,
        metrics=[COUNT, COST, {"measure": "inputTokens", "aggregation": "sum"}],
        timeDimension={"granularity": granularity},
        config={"row_limit": 1000},
    )
    bucket = bucket_of(granularity)
    within = [r for r in RECORDS if start <= r["start"] <= end]
    groups = grouped(lambda r: bucket(r["start"]), within)
    every, time = set(groups), start
    while bucket(time) < bucket(end):
        every.add(bucket(time))
        time += step
    assert [row["time_dimension"] for row in rows] == sorted(every)[:1000]
    for row in rows:
        records = groups.get(row["time_dimension"], [])
        cost = sum(r["totalCost"] or 0 for r in records) if records else None
        assert row["sum_totalCost"] == pytest.approx(cost)
        assert row["count_count"] == len(records)
        assert row["sum_inputTokens"] == sum(r["inputTokens"] for r in records)


@pytest.mark.parametrize(
    ("hours", "granularity"),
    [(1, "minute"), (71, "hour"), (24 * 12, "day"), (24 * 61, "week"), (24 * 400, "month")],
)
def test_auto_chooses_buckets_by_the_period(
    hours: int, granularity: str, client: httpx.Client
) -> None:
    to = (FROM + timedelta(hours=hours)).isoformat()
    answers = [
        ask(client, toTimestamp=to, timeDimension={"granularity": asked})
        for asked in ("auto", granularity)
    ]
    assert answers[0] == answers[1]


def test_by_day_and_model_only_days_without_any_are_filled(client: httpx.Client) -> None:
    rows = ask(
        client,
        metrics=[COST, COUNT],
        dimensions=[{"field": "providedModelName"}, {"field": "name"}, {"field": "tags"}],
        timeDimension={"granularity": "day"},
        config={"row_limit": 1000},
    )
    day = f"{FROM + timedelta(days=EMPTY_DAY):%Y-%m-%d}"
    blank: Record = {"providedModelName": None, "name": "", "tags": [], "time_dimension": day}
    filled = [row for row in rows if row["time_dimension"] == day]
    assert filled == [{**blank, "sum_totalCost": None, "count_count": 0}]
    keys = ("providedModelName", "name", "tags")
    groups = grouped(lambda r: (f"{r['start']:%Y-%m-%d}", *(r[k] for k in keys)), RECORDS)
    assert len(rows) == len(groups) + 1
    for row in rows:
        if row["time_dimension"] != day:
            own = (row["time_dimension"], *(row[k] for k in keys[:2]), tuple(row["tags"]))
            assert row["count_count"] == len(groups[own])


@pytest.mark.parametrize("name", ["name", "level", "tags", "isRootObservation"])
def test_counts_by_a_dimension(name: str, client: httpx.Client) -> None:
    rows = ask(client, dimensions=[{"field": name}])
    groups = grouped(lambda r: r[name], RECORDS)
    found = [tuple(row[name]) if name == "tags" else row[name] for row in rows]
    counts = {key: len(records) for key, records in groups.items()}
    assert dict(zip(found, (row["count_count"] for row in rows), strict=True)) == counts
    assert [row["count_count"] for row in rows] == sorted(counts.values(), reverse=True)


def test_a_period_within_one_empty_bucket_has_none(client: httpx.Client) -> None:
    start = FROM + timedelta(days=EMPTY_DAY)
    query = {
        "fromTimestamp": start.isoformat(),
        "toTimestamp": (start + timedelta(hours=5)).isoformat(),
    }
    assert ask(client, **query, timeDimension={"granularity": "day"}) == []


def test_what_is_absent_comes_last_in_any_order(client: httpx.Client) -> None:
    for direction, models in (
        ("asc", ["gpt-4o", "gpt-4o-mini", "who-knows", None]),
        ("desc", ["who-knows", "gpt-4o-mini", "gpt-4o", None]),
    ):
        order = [{"field": "providedModelName", "direction": direction}]
        rows = ask(client, dimensions=[{"field": "providedModelName"}], orderBy=order)
        assert [row["providedModelName"] for row in rows] == models


def test_an_order_that_is_asked_for_leaves_empty_buckets_out(client: httpx.Client) -> None:
    order = [
        {"field": "count_count", "direction": "asc"},
        {"field": "time_dimension", "direction": "desc"},
    ]
    rows = ask(client, timeDimension={"granularity": "day"}, orderBy=order)
    days = grouped(lambda r: f"{r['start']:%Y-%m-%d}", RECORDS)
    expected = sorted(sorted(days, reverse=True), key=lambda day: len(days[day]))
    assert [row["time_dimension"] for row in rows] == expected


@pytest.mark.parametrize("limit", [3, 100])
def test_the_first_users_by_cost(limit: int, client: httpx.Client) -> None:
    rows = ask(
        client,
        metrics=[COST, {"measure": "latency", "aggregation": "p95"}],
        dimensions=[{"field": "userId"}],
        orderBy=[{"field": "sum_totalCost", "direction": "desc"}],
        config={"row_limit": limit},
    )
    users = grouped(lambda r: r["userId"], RECORDS)
    cost = {user: sum(r["totalCost"] or 0 for r in records) for user, records in users.items()}
    expected = sorted(cost, key=lambda user: -cost[user])[:limit]
    assert [row["userId"] for row in rows] == expected
    assert None in cost, "an observation without a user is one of them"
    for row in rows:
        latencies = [r["latency"] for r in users[row["userId"]] if r["latency"] is not None]
        assert row["p95_latency"] == pytest.approx(percentile(95)(latencies))


FILTERS: list[tuple[dict[str, Any], Callable[[Record], bool]]] = [
    ({"column": "level", "type": "string", "value": "ERROR"}, lambda r: r["level"] == "ERROR"),
    ({"column": "userId", "type": "null", "operator": "is null"}, lambda r: r["userId"] is None),
    (
        {
            "column": "providedModelName",
            "type": "stringOptions",
            "operator": "any of",
            "value": ["gpt-4o"],
        },
        lambda r: r["providedModelName"] == "gpt-4o",
    ),
    (
        {"column": "tags", "type": "arrayOptions", "operator": "all of", "value": ["x", "y"]},
        lambda r: {"x", "y"} <= {*r["tags"]},
    ),
    (
        {
            "column": "startTime",
            "type": "datetime",
            "operator": ">=",
            "value": "2026-11-15T00:00:00Z",
        },
        lambda r: r["start"] >= datetime(2026, 11, 15, tzinfo=UTC),
    ),
    (
        {"column": "name", "type": "string", "value": "x' OR 1=1 --"},
        lambda _: False,
    ),
]


@pytest.mark.parametrize("number", range(len(FILTERS)))
def test_a_filter_counts_what_it_says(number: int, client: httpx.Client) -> None:
    condition, fits = FILTERS[number]
    assert ask(client, filters=[{"operator": "=", **condition}]) == [
        {"count_count": sum(map(fits, RECORDS))}
    ]


def test_without_a_match_sums_are_zero_and_costs_unknown(client: httpx.Client) -> None:
    asked = [
        COST,
        COUNT,
        {"measure": "inputTokens", "aggregation": "sum"},
        {"measure": "latency", "aggregation": "histogram"},
    ]
    nobody = [{"column": "name", "type": "string", "operator": "=", "value": "nobody"}]
    assert ask(client, metrics=asked, filters=nobody) == [
        {"sum_totalCost": None, "count_count": 0, "sum_inputTokens": 0, "histogram_latency": []}
    ]


@pytest.mark.parametrize("bins", [1, 7, 100])
def test_a_histogram_holds_every_value(bins: int, client: httpx.Client) -> None:
    latency = {"measure": "latency", "aggregation": "histogram"}
    (row,) = ask(client, metrics=[latency], config={"bins": bins})
    values = [r["latency"] for r in RECORDS if r["latency"] is not None]
    histogram = row["histogram_latency"]
    assert len(histogram) == bins
    assert (histogram[0][0], histogram[-1][1]) == (min(values), max(values))
    assert all(a[1] == b[0] for a, b in pairwise(histogram))
    assert sum(height for _, _, height in histogram) == pytest.approx(len(values))


def test_scores_by_the_observation_and_the_trace_they_belong_to(client: httpx.Client) -> None:
    client.post(
        SCORES,
        json=[
            {
                "name": "resolved",
                "value": 1,
                "dataType": "BOOLEAN",
                "sessionId": "s",
                "timestamp": FROM.isoformat(),
            }
        ],
    )
    value = {"measure": "value", "aggregation": "avg"}
    rows = ask(
        client,
        view="scores-numeric",
        metrics=[value, COUNT],
        dimensions=[{"field": "observationModelName"}, {"field": "observationName"}],
    )
    groups = grouped(lambda r: (r["providedModelName"], r["name"]), RECORDS)
    assert len(rows) == len(groups), "a score of a session belongs to no observation"
    for row in rows:
        records = groups[row["observationModelName"], row["observationName"]]
        values = [n / 3 for r in records for n in range(r["scores"])]
        assert row["count_count"] == len(values)
        assert row["avg_value"] == pytest.approx(statistics.fmean(values))
    roots = {r["traceId"]: r for r in RECORDS if r["isRootObservation"]}
    by_tags = grouped(lambda r: roots[r["traceId"]]["tags"], RECORDS)
    by_trace = ask(client, view="scores-numeric", dimensions=[{"field": "tags"}])
    assert {tuple(row["tags"]): row["count_count"] for row in by_trace} == {
        tags: sum(r["scores"] for r in records) for tags, records in by_tags.items()
    }
    boolean = ask(
        client,
        view="scores-boolean",
        metrics=[COUNT, value],
        dimensions=[{"field": "booleanValue"}],
    )
    assert boolean == [{"booleanValue": True, "count_count": 1, "avg_value": 1}]


def test_every_dimension_of_every_view_can_be_asked_for(client: httpx.Client) -> None:
    from local_langfuse.metrics import VIEWS

    for name, view in VIEWS.items():
        for dimension in view.dimensions:
            rows = ask(
                client,
                view=name,
                dimensions=[{"field": dimension}],
                orderBy=[{"field": "count_count", "direction": "desc"}],
                config={"row_limit": 1000},
            )
            assert all(row.keys() == {dimension, "count_count"} for row in rows)


BAD: list[Any] = [
    [],
    5,
    "text",
    {"view": "traces"},
    {"view": ["observations"]},
    {"view": {}},
    {"metrics": None},
    {"metrics": {}},
    {"metrics": [5]},
    {"metrics": [COUNT] * 21},
    {"metrics": [{"measure": "count"}]},
    {"metrics": [{"measure": "nonsense", "aggregation": "sum"}]},
    {"metrics": [{"measure": "latency", "aggregation": "median"}]},
    {"metrics": [{"measure": ["latency"], "aggregation": "sum"}]},
    {"metrics": [{"measure": "latency); DROP TABLE scores; --", "aggregation": "sum"}]},
    {"view": "scores-categorical", "metrics": [{"measure": "value", "aggregation": "avg"}]},
    {"dimensions": "name"},
    {"dimensions": ["name"]},
    {"dimensions": [{"field": "nonsense"}]},
    {"dimensions": [{"field": "name, (SELECT 1)"}]},
    {"dimensions": [{"field": "value"}]},
    {"dimensions": [{"field": "name"}] * 21},
    *({"dimensions": [{"field": name}]} for name in ("id", "traceId", "userId", "sessionId")),
    {"dimensions": [{"field": "userId"}], "config": {"row_limit": 5}},
    {
        "dimensions": [{"field": "userId"}],
        "orderBy": [{"field": "userId", "direction": "desc"}],
        "config": {"row_limit": 5},
    },
    {
        "dimensions": [{"field": "userId"}],
        "orderBy": [{"field": "count_count", "direction": "asc"}],
        "config": {"row_limit": 5},
    },
    {"orderBy": [{"field": "nonsense", "direction": "desc"}]},
    {"orderBy": [{"field": "count_count", "direction": "up"}]},
    {"orderBy": [{"field": "count_count"}]},
    {"orderBy": [None]},
    {"orderBy": "count_count"},
    {"timeDimension": "day"},
    {"timeDimension": {"granularity": "second"}},
    {"timeDimension": {"granularity": ["day"]}},
    {"timeDimension": {"granularity": "minute"}, "fromTimestamp": "1000-01-01T00:00:00Z"},
    {"timeDimension": {"granularity": "day"}, "toTimestamp": "9999-12-31T00:00:00Z"},
    {"fromTimestamp": "yesterday"},
    {"fromTimestamp": "2026-11-15"},
    {"fromTimestamp": 5},
    {"fromTimestamp": None},
    {"fromTimestamp": PERIOD["toTimestamp"]},
    {"fromTimestamp": "2027-01-01T00:00:00Z"},
    *({"config": {"row_limit": value}} for value in (0, 1001, 1.5, "5", True, None, 10**30)),
    {"config": "large"},
    {"config": [], "dimensions": [{"field": "userId"}]},
    {"config": {"bins": 101}, "metrics": [{"measure": "latency", "aggregation": "histogram"}]},
    {"filters": "name"},
    {"filters": [5]},
    {"filters": [{"column": "nonsense", "type": "string", "operator": "=", "value": "a"}]},
    {"filters": [{"column": "name", "type": "string", "operator": "LIKE", "value": "a"}]},
    {"filters": [{"column": "name", "type": "number", "operator": "=", "value": 5}]},
    {"filters": [{"column": "name", "type": "string", "operator": "=", "value": [[]]}]},
    {"filters": json.loads("[" * 200 + "]" * 200)},
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_a_bad_query_is_refused_with_a_message(number: int, client: httpx.Client) -> None:
    bad = BAD[number]
    query = (
        {"view": "observations", **PERIOD, "metrics": [COUNT], **bad}
        if isinstance(bad, dict)
        else bad
    )
    answer = client.get(METRICS, params={"query": json.dumps(query)})
    assert answer.status_code == 400, answer.text
    assert answer.json()["message"]


@pytest.mark.parametrize("text", ["", "[" * 10_000, "NaN", '{"a": 1e999}', '"\\ud800"'])
def test_what_is_no_json_is_refused(text: str, client: httpx.Client) -> None:
    for query in ({"query": text}, {}):
        answer = client.get(METRICS, params=query)
        assert answer.status_code == 400, answer.text
        assert answer.json()["message"]


def test_huge_numbers_give_an_answer(tmp_path_factory: pytest.TempPathFactory) -> None:
    running = local_langfuse.start(tmp_path_factory.mktemp("huge") / "langfuse.db")
    with client_of(running.base_url) as client:
        for number in (1, 2):
            one = span({**RECORDS[0], "id": f"{number:016x}", "totalCost": 1e308})
            usage = json.dumps({"input": 2**62, "output": 0, "total": 2**62})
            one["attributes"][-1]["value"]["stringValue"] = usage
            send(client, one)
        names = [*AGGREGATIONS, "histogram"]
        for measure in ("totalCost", "inputTokens", "tokensPerSecond"):
            (row,) = ask(client, metrics=[{"measure": measure, "aggregation": a} for a in names])
            assert row[f"count_{measure}"] == 2
    running.stop()
