"""Structured filters: from a request's conditions to a WHERE clause with bound parameters.

Only text from the tables below is pasted into the SQL; every value is bound.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from local_langfuse.wire import Refused, check, microseconds, pairs, parse, to_json

Condition = Mapping[str, Any]
MAX_CONDITIONS = 50
MAX_OPTIONS = 1000


@dataclass(frozen=True)
class Column:
    """What a filter may look at: its SQL, and the kind of value it has."""

    sql: str
    kind: str = "text"


TEXT_COLUMNS = (
    "id=id type=type name=name traceId=trace_id parentObservationId=parent_id traceName=trace_name "
    "environment=environment release=release version=version level=level input=input output=output "
    "statusMessage=status_message userId=user_id sessionId=session_id model=model "
    "providedModelName=model promptName=prompt_name"
)
OBSERVATION_COLUMNS: Mapping[str, Column] = {
    **{name: Column(sql) for name, sql in pairs(TEXT_COLUMNS).items()},
    "isRootObservation": Column("is_root", "boolean"),
    "startTime": Column("start_ms", "datetime"),
    "endTime": Column("end_us / 1000", "datetime"),
    "latency": Column("latency_ms / 1000.0", "number"),
    "timeToFirstToken": Column("first_token_ms / 1000.0", "number"),
    "tokensPerSecond": Column("output_tokens * 1000.0 / nullif(latency_ms, 0)", "number"),
    "inputTokens": Column("input_tokens", "number"),
    "outputTokens": Column("output_tokens", "number"),
    "totalTokens": Column("total_tokens", "number"),
    "tokens": Column("total_tokens", "number"),
    "inputCost": Column("input_cost", "number"),
    "outputCost": Column("output_cost", "number"),
    "totalCost": Column("total_cost", "number"),
    "promptVersion": Column("prompt_version", "number"),
    "tags": Column("tags", "list"),
    "traceTags": Column("tags", "list"),
    "metadata": Column("metadata", "object"),
}

TEXT = {
    "=": "{0} = ?",
    "contains": "instr({0}, ?) > 0",
    "does not contain": "instr(coalesce({0}, ''), ?) = 0",
    "starts with": "instr({0}, ?) = 1",
    "ends with": "substr({0}, max(1, length({0}) - length(?) + 1)) = ?",
}
MATCHES = {"matches": "instr(lower({0}), lower(?)) > 0"}
OPTIONS = {
    "any of": "{0} IN (SELECT value FROM json_each(?))",
    "none of": "coalesce({0}, '') NOT IN (SELECT value FROM json_each(?))",
}
LIST = {
    "any of": "EXISTS (SELECT 1 FROM json_each({0}) AS own JOIN json_each(?) AS asked"
    " ON own.value = asked.value)",
    "none of": "NOT EXISTS (SELECT 1 FROM json_each({0}) AS own JOIN json_each(?) AS asked"
    " ON own.value = asked.value)",
    "all of": "NOT EXISTS (SELECT 1 FROM json_each(?) AS asked WHERE asked.value NOT IN"
    " (SELECT own.value FROM json_each({0}) AS own))",
}
COMPARE = {operator: f"{{0}} {operator} ?" for operator in ("=", ">", "<", ">=", "<=")}
NULL = {"is null": "{0} IS NULL", "is not null": "{0} IS NOT NULL"}
BOOLEAN = {operator: f"{{0}} {operator} ?" for operator in ("=", "<>")}
# Values in an object are compared as text; json_each gives 1 and 0 for true and false.
AS_TEXT = "CASE entry.type WHEN 'true' THEN 'true' WHEN 'false' THEN 'false' ELSE entry.value END"
AS_NUMBER = "CASE WHEN entry.type IN ('integer', 'real') THEN entry.value END"
ENTRY = "EXISTS (SELECT 1 FROM json_each({0}) AS entry WHERE entry.key = ?{1})"

# For each filter type: the kinds of columns it fits, and its operators.
TYPES: Mapping[str, tuple[tuple[str, ...], Mapping[str, str]]] = {
    "string": (("text",), {**TEXT, **MATCHES}),
    "stringOptions": (("text",), OPTIONS),
    "number": (("number",), COMPARE),
    "datetime": (("datetime",), COMPARE),
    "boolean": (("boolean",), BOOLEAN),
    "arrayOptions": (("list",), LIST),
    "null": (("text", "number", "datetime", "boolean"), NULL),
    "stringObject": (("object",), {**TEXT, "matches": TEXT["contains"]}),
    "numberObject": (("object",), COMPARE),
    "categoryOptions": (("object",), OPTIONS),
}
PRESENCE = {"is set": True, "is not set": False}


def conditions(*plain: tuple[str, str, str, Any]) -> list[Condition]:
    """Turn type, column, operator and value into conditions; skip those whose value is None."""
    names = ("type", "column", "operator", "value")
    return [dict(zip(names, one, strict=True)) for one in plain if one[3] is not None]


def read_filter(text: str | None) -> list[Condition]:
    """Return the conditions in the query parameter `filter`; none if it is absent."""
    if not text:
        return []
    return checked(check(parse(text, "filter parameter")))


def checked(given: Any) -> list[Condition]:
    """Return the conditions unchanged; raise `Refused` unless they are a list of JSON objects."""
    if not isinstance(given, list) or len(given) > MAX_CONDITIONS:
        raise Refused(f"filter must be a JSON list of at most {MAX_CONDITIONS} conditions")
    if not all(isinstance(condition, dict) for condition in given):
        raise Refused("each condition of a filter must be a JSON object")
    _refuse_slow_text_search(given)
    return given


def _refuse_slow_text_search(given: Sequence[Condition]) -> None:
    # As Langfuse does: it has an index only for these two operators.
    searched = [c.get("operator") for c in given if c.get("column") in ("input", "output")]
    if any(o in [*TEXT] for o in searched) and not any(o in ("=", "matches") for o in searched):
        raise Refused("a filter on input or output also needs one with the operator = or matches")


def where(given: Sequence[Condition], columns: Mapping[str, Column]) -> tuple[list[str], list[Any]]:
    """Return the SQL of each condition, and the values to bind, in order.

    `where([{"type": "string", "column": "name", "operator": "=", "value": "a"}],
    OBSERVATION_COLUMNS) -> (["name = ?"], ["a"])`
    """
    sql, values = [], []
    for condition in given:
        one, bound = _clause(condition, columns)
        sql.append(one)
        values += bound
    return sql, values


def _clause(condition: Condition, columns: Mapping[str, Column]) -> tuple[str, list[Any]]:
    column = _choice(condition, "column", columns)
    kinds, operators = _choice(condition, "type", TYPES)
    kind = condition["type"]
    if column.kind not in kinds:
        raise Refused(f"filter: {condition['column']} cannot have a condition of type {kind}")
    if column.kind == "object":
        return _object_clause(condition, column, operators)
    template = _choice(condition, "operator", operators)
    if kind == "null":
        return template.format(column.sql), []
    value = _value(condition.get("value"), kind)
    return template.format(column.sql), [value] * template.count("?")


def _object_clause(
    condition: Condition, column: Column, operators: Mapping[str, str]
) -> tuple[str, list[Any]]:
    key, operator, kind = (condition.get(name) for name in ("key", "operator", "type"))
    if not isinstance(key, str):
        raise Refused("filter: a condition on metadata needs a key")
    if kind == "stringObject" and operator in ("is set", "is not set"):
        present = ENTRY.format(column.sql, "")
        return (present if PRESENCE[operator] else f"NOT {present}"), [key]
    template = _choice(condition, "operator", operators)
    value = _value(condition.get("value"), str(kind))
    if operator in ("does not contain", "none of"):  # also true if the key is absent
        positive = operators["contains" if operator == "does not contain" else "any of"]
        return f"NOT {ENTRY.format(column.sql, f' AND {positive.format(AS_TEXT)}')}", [key, value]
    expression = template.format(AS_NUMBER if kind == "numberObject" else AS_TEXT)
    return ENTRY.format(column.sql, f" AND {expression}"), [key] + [value] * template.count("?")


def _choice(condition: Condition, name: str, choices: Mapping[str, Any]) -> Any:
    chosen = condition.get(name)
    if not isinstance(chosen, str) or chosen not in choices:
        raise Refused(f"filter: {name} must be one of {', '.join(choices)}")
    return choices[chosen]


def _value(value: Any, kind: str) -> Any:
    if kind in ("stringOptions", "arrayOptions", "categoryOptions"):
        texts = isinstance(value, list) and all(isinstance(item, str) for item in value)
        if not texts or len(value) > MAX_OPTIONS:
            raise Refused(f"filter: value must be a list of at most {MAX_OPTIONS} strings")
        return to_json(value)
    if kind == "datetime":
        return microseconds(value, "filter: value") // 1000
    if kind == "boolean":
        return _typed(value, bool)
    if kind in ("number", "numberObject"):
        if isinstance(value, bool) or abs(_typed(value, int | float)) > 1e300:
            raise Refused("filter: value must be a number")
        return float(value)
    return _typed(value, str)


def _typed(value: Any, wanted: Any) -> Any:
    if not isinstance(value, wanted):
        raise Refused(f"filter: value must be of type {getattr(wanted, '__name__', wanted)}")
    return value
