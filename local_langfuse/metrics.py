"""The Metrics API: from a query to one SQL statement, and from its rows to the answer.

Only text from the tables below is pasted into the SQL; every value is bound. Times are
in milliseconds and costs in USD. An unknown cost counts as 0, as in Langfuse.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from local_langfuse.filters import OBSERVATION_COLUMNS, Column, checked, where
from local_langfuse.store import Row, Store
from local_langfuse.wire import Query, Refused, as_object, check, microseconds, pairs, parse

MAX_PARTS = 20  # dimensions, metrics, orders
MAX_BUCKETS = 10_000
MAX_ROWS, DEFAULT_ROWS = 1000, 100
MAX_BINS, DEFAULT_BINS = 100, 10


@dataclass(frozen=True)
class Dimension:
    """Something to group and filter by."""

    sql: str
    empty: Any = None  # its value in a time bucket that was filled in
    kind: str = "text"
    is_many: bool = False  # it has many values: you may only ask for the top few


@dataclass(frozen=True)
class View:
    """What a query can be about."""

    source: str
    time: str  # in milliseconds
    condition: str
    dimensions: Mapping[str, Dimension]
    measures: Mapping[str, str]  # to aggregate
    columns: Mapping[str, Column]  # to filter by, beyond the dimensions


def _required(text: str) -> dict[str, Dimension]:
    return {name: Dimension(sql, "") for name, sql in pairs(text).items()}


def _optional(text: str, *, is_many: bool = False) -> dict[str, Dimension]:
    # An absent text is "" in the table, and null in the answer.
    nulled = {name: f"nullif({sql}, '')" for name, sql in pairs(text).items()}
    return {name: Dimension(sql, is_many=is_many) for name, sql in nulled.items()}


def _formatted(time: str, form: str) -> Dimension:
    return Dimension(f"strftime('{form}', {time} / 1000, 'unixepoch')", "")


OBSERVATIONS = View(
    source="observations",
    time="start_ms",
    condition="true",
    dimensions={
        **_required("type=type name=name level=level"),
        **_optional(
            "environment=environment version=version release=release traceName=trace_name "
            "traceRelease=release traceVersion=version providedModelName=model "
            "promptName=prompt_name"
        ),
        **_optional(
            "id=id traceId=trace_id userId=user_id sessionId=session_id "
            "parentObservationId=parent_id experimentId=experiment_id",
            is_many=True,
        ),
        "promptVersion": Dimension("prompt_version", kind="number"),
        "isRootObservation": Dimension("is_root", empty=False, kind="boolean"),
        "tags": Dimension("tags", [], "list"),
        "startTimeMonth": _formatted("start_ms", "%Y-%m"),
    },
    measures={
        "count": "1",
        "latency": "latency_ms",
        "streamingLatency": "latency_ms - first_token_ms",
        "timeToFirstToken": "first_token_ms",
        "inputTokens": "input_tokens",
        "outputTokens": "output_tokens",
        "totalTokens": "total_tokens",
        # Like Langfuse, divide by the number of full seconds on the clock in between.
        "outputTokensPerSecond": "output_tokens * 1.0"
        " / nullif(end_us / 1000000 - completion_start_us / 1000000, 0)",
        "tokensPerSecond": "total_tokens * 1.0 / nullif(end_us / 1000000 - start_us / 1000000, 0)",
        "inputCost": "coalesce(input_cost, 0)",
        "outputCost": "coalesce(output_cost, 0)",
        "totalCost": "coalesce(total_cost, 0)",
        "countScores": "nullif((SELECT count(*) FROM scores WHERE scores.trace_id ="
        " observations.trace_id AND scores.observation_id = observations.id), 0)",
    },
    columns={name: OBSERVATION_COLUMNS[name] for name in ("metadata", "startTime", "endTime")},
)

# Without any values, these measures are null and the others are 0.
NULLABLE = {
    *("latency", "streamingLatency", "timeToFirstToken", "totalCost", "countScores"),
    *("outputTokensPerSecond", "tokensPerSecond"),
}
JOINS = {  # only if a query asks for their columns; it then leaves out scores without a match
    "t": " JOIN observations AS t ON t.rowid = (SELECT rowid FROM observations WHERE"
    " trace_id = s.trace_id AND is_root ORDER BY start_ms LIMIT 1)",
    "o": " JOIN observations AS o ON o.trace_id = s.trace_id AND o.id = s.observation_id",
}
SCORES = {
    **_required("environment=s.environment name=s.name source=s.source dataType=s.data_type"),
    **_required("observationName=o.name"),
    **_optional(
        "configId=s.config_id traceName=t.trace_name traceRelease=t.release "
        "traceVersion=t.version observationModelName=o.model observationPromptName=o.prompt_name"
    ),
    **_optional(
        "id=s.id traceId=s.trace_id userId=t.user_id sessionId=s.session_id "
        "observationId=s.observation_id datasetRunId=s.experiment_id experimentId=o.experiment_id",
        is_many=True,
    ),
    "tags": Dimension("t.tags", [], "list"),
    "observationPromptVersion": Dimension("o.prompt_version", kind="number"),
    "timestampMonth": _formatted("s.timestamp_ms", "%Y-%m"),
    "timestampDay": _formatted("s.timestamp_ms", "%Y-%m-%d"),
}
NUMBER = {"value": Dimension("s.value", 0, "number")}
BOOLEAN = {**NUMBER, "booleanValue": Dimension("s.value", empty=False, kind="boolean")}
COUNT = {"count": "1"}
VALUE = {**COUNT, "value": "s.value"}


def _scores(types: str, more: Mapping[str, Dimension], measures: Mapping[str, str]) -> View:
    columns = {
        "metadata": Column("s.metadata", "object"),
        "timestamp": Column("s.timestamp_ms", "datetime"),
    }
    condition = f"s.data_type IN ({types})"
    return View("scores AS s", "s.timestamp_ms", condition, {**SCORES, **more}, measures, columns)


VIEWS = {
    "observations": OBSERVATIONS,
    "scores-numeric": _scores("'NUMERIC', 'BOOLEAN'", NUMBER, VALUE),
    "scores-boolean": _scores("'BOOLEAN'", BOOLEAN, VALUE),
    "scores-categorical": _scores("'CATEGORICAL'", _required("stringValue=s.string_value"), COUNT),
}
AGGREGATIONS = {
    "sum": "total({})",  # unlike sum() it cannot overflow
    **{name: f"{name}({{}})" for name in ("avg", "count", "max", "min")},
    **{f"p{n}": f"quantile({{}}, {n / 100})" for n in (50, 75, 90, 95, 99)},
    "histogram": "histogram({}, ?)",
}
# How to show a time, how to get from it to the start of its bucket, and to the next bucket.
GRANULARITIES = {
    "minute": ("%Y-%m-%d %H:%M:00", "'+0 days'", "+1 minute"),
    "hour": ("%Y-%m-%d %H:00:00", "'+0 days'", "+1 hour"),
    "day": ("%Y-%m-%d", "'+0 days'", "+1 day"),
    "week": ("%Y-%m-%d", "'weekday 0', '-6 days'", "+7 days"),
    "month": ("%Y-%m-01", "'+0 days'", "+1 month"),
}
AUTO = {"minute": 2, "hour": 72, "day": 1440, "week": 8760, "month": math.inf}  # under this many h


@dataclass(frozen=True)
class Output:
    """One column of the answer."""

    name: str
    sql: str
    empty: Any  # in a time bucket that was filled in
    kind: str
    values: tuple[int, ...] = ()  # for its question marks


def metrics(store: Store, query: Query) -> Row:
    """Answer a query of the Metrics API; the docstring of `api.metrics` explains its form."""
    body = as_object(check(parse(query.text("query") or "", "query parameter")), "query")
    view = VIEWS[_choice(body, "view", VIEWS)]
    period = _period(body)
    granularity = _granularity(body, period)
    outputs = [_dimension(part, view) for part in _parts(body, "dimensions")]
    if granularity:
        outputs.append(Output("time_dimension", _bucket(granularity, view.time), "", "text"))
    outputs += [_metric(part, body, view) for part in _parts(body, "metrics", is_required=True)]
    if not body["metrics"]:
        outputs.append(Output("count", "count(*)", 0, "metric"))
    _check_top_n(body, view)
    sql, values = _statement(body, view, outputs, period)
    found = store.rows(sql, values)
    rows = [{o.name: _shown(o.kind, row[i]) for i, o in enumerate(outputs)} for row in found]
    if granularity and not body.get("orderBy"):
        rows = _filled(store, rows, outputs, granularity, period)[: _rows(body)]
    return {"data": rows}


def _choice(part: Any, key: str, choices: Mapping[str, Any]) -> str:
    chosen = part.get(key) if isinstance(part, dict) else None
    if not isinstance(chosen, str) or chosen not in choices:
        raise Refused(f"Invalid {key}. Must be one of {', '.join(choices)}")
    return chosen


def _parts(body: Row, key: str, *, is_required: bool = False) -> list[Any]:
    parts = body.get(key)
    if parts is None and not is_required:
        return []
    if not isinstance(parts, list) or len(parts) > MAX_PARTS:
        raise Refused(f"{key} must be a list of at most {MAX_PARTS} items")
    return parts


def _period(body: Row) -> tuple[int, int]:
    start, end = (microseconds(body.get(k), k) // 1000 for k in ("fromTimestamp", "toTimestamp"))
    if start >= end:
        raise Refused("fromTimestamp must be before toTimestamp")
    return start, end


def _granularity(body: Row, period: tuple[int, int]) -> str | None:
    if body.get("timeDimension") is None:
        return None
    asked = _choice(body["timeDimension"], "granularity", {**GRANULARITIES, "auto": None})
    hours = (period[1] - period[0]) / 3_600_000
    return next(name for name in AUTO if hours < AUTO[name]) if asked == "auto" else asked


def _bucket(granularity: str, milliseconds: str) -> str:
    form, back, _ = GRANULARITIES[granularity]
    return f"strftime('{form}', {milliseconds} / 1000, 'unixepoch', {back})"


def _dimension(part: Any, view: View) -> Output:
    name = _choice(part, "field", view.dimensions)
    dimension = view.dimensions[name]
    return Output(name, dimension.sql, dimension.empty, dimension.kind)


def _metric(part: Any, body: Row, view: View) -> Output:
    name = _choice(part, "measure", view.measures)
    aggregation = _choice(part, "aggregation", AGGREGATIONS)
    sql, label = AGGREGATIONS[aggregation], f"{aggregation}_{name}"
    if aggregation == "histogram":
        bins = _whole(body, "bins", DEFAULT_BINS, MAX_BINS)
        return Output(label, sql.format(view.measures[name]), [], "list", (bins,))
    is_nullable = name in NULLABLE and aggregation != "count"
    if aggregation == "sum" and is_nullable:
        sql = "CASE WHEN count({0}) THEN total({0}) END"
    return Output(label, sql.format(view.measures[name]), None if is_nullable else 0, "metric")


def _shown(kind: str, value: Any) -> Any:
    if kind == "list":
        return parse(value or "[]")
    if kind == "boolean":
        return bool(value)
    if kind == "metric" and isinstance(value, float):
        is_whole = value.is_integer() and abs(value) < 2**53
        return int(value) if is_whole else value if math.isfinite(value) else None
    return value


def _whole(body: Row, key: str, default: int, most: int) -> int:
    config = body.get("config") or {}
    value = config.get(key, default) if isinstance(config, dict) else None
    if type(value) is not int or not 1 <= value <= most:
        raise Refused(f"config.{key} must be a whole number from 1 to {most}")
    return value


def _rows(body: Row) -> int:
    return _whole(body, "row_limit", DEFAULT_ROWS, MAX_ROWS)


def _check_top_n(body: Row, view: View) -> None:
    names = [part["field"] for part in _parts(body, "dimensions")]
    many = [name for name in names if view.dimensions[name].is_many]
    is_top = any(
        order.get("direction") == "desc" and order.get("field") not in [*names, "time_dimension"]
        for order in _parts(body, "orderBy")
        if isinstance(order, dict)
    )
    if many and not (is_top and (body.get("config") or {}).get("row_limit")):
        raise Refused(
            f"High cardinality dimension(s) {', '.join(map(repr, many))} require both "
            "'config.row_limit' and 'orderBy' with direction 'desc' on a measure field."
        )


def _statement(
    body: Row, view: View, outputs: list[Output], period: tuple[int, int]
) -> tuple[str, list[Any]]:
    columns = {name: Column(d.sql, d.kind) for name, d in view.dimensions.items()}
    asked, bound = where(checked(body.get("filters") or []), {**columns, **view.columns})
    used = " ".join([*(output.sql for output in outputs), *asked])
    joins = [sql for table, sql in JOINS.items() if re.search(rf"\b{table}\.", used)]
    group = [str(i) for i in range(1, len(outputs) - max(len(body["metrics"]), 1) + 1)]
    sql = (
        f"SELECT {', '.join(output.sql for output in outputs)}"  # noqa: S608  see the module
        f" FROM {view.source}{''.join(joins)}"
        f" WHERE {' AND '.join([view.condition, f'{view.time} BETWEEN ? AND ?', *asked])}"
        f"{' GROUP BY ' * bool(group)}{', '.join(group)}"
        f" ORDER BY {', '.join(_order(body, outputs))} LIMIT ?"
    )
    return sql, [*(v for output in outputs for v in output.values), *period, *bound, _rows(body)]


def _order(body: Row, outputs: list[Output]) -> list[str]:
    """Return the requested order; by default by time or, without time, by the first metric."""
    numbers = {output.name: i for i, output in enumerate(outputs, start=1)}
    first_metric = outputs[-max(len(body["metrics"]), 1)].name
    usual = {"field": first_metric, "direction": "desc"}
    if "time_dimension" in numbers:
        usual = {"field": "time_dimension", "direction": "asc"}
    order = []
    for part in _parts(body, "orderBy") or [usual]:
        number = numbers[_choice(part, "field", numbers)]
        order.append(f"{number} {_choice(part, 'direction', {'asc': 0, 'desc': 0})} NULLS LAST")
    return order


def _filled(
    store: Store, rows: list[Row], outputs: list[Output], granularity: str, period: tuple[int, int]
) -> list[Row]:
    """Add a row for each time bucket without one, up to the bucket where the period ends."""
    form, _, step = GRANULARITIES[granularity]
    first, last = _bucket(granularity, "?1"), _bucket(granularity, "?2")
    buckets = store.rows(
        f"WITH RECURSIVE buckets(start) AS (SELECT {first} WHERE {first} < {last} UNION ALL"  # noqa: S608
        f" SELECT strftime('{form}', start, '{step}') FROM buckets"
        f" WHERE strftime('{form}', start, '{step}') < {last}) SELECT start FROM buckets LIMIT ?3",
        [*period, MAX_BUCKETS + 1],
    )
    if len(buckets) > MAX_BUCKETS:
        raise Refused(f"more than {MAX_BUCKETS} time buckets: ask for a coarser granularity")
    there = {row["time_dimension"] for row in rows}
    blank = {output.name: output.empty for output in outputs}
    empty = [{**blank, "time_dimension": start} for (start,) in buckets if start not in there]
    return sorted([*rows, *empty], key=lambda row: str(row["time_dimension"]))
