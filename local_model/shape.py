"""The shape of a request: its parameters, their types and ranges, as OpenAI checks them.

A check takes a value and the path to it, and raises `ApiError` in OpenAI's own words.
`fields(required, optional)` is an object with these keys and no others, `tagged` an object
with a key that names its kind, and `by_type` a choice by JSON type.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

Json = dict[str, Any]
Check = Callable[[Any, str], None]
NAMES: dict[type, str] = {
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal",
    list: "an array",
    dict: "an object",
    type(None): "null",
}


class ApiError(Exception):
    """An answer other than 200: OpenAI's message, the parameter it is about, and its code."""

    def __init__(
        self, message: str, param: str | None = None, code: str | None = None, status: int = 400
    ) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status

    def body(self) -> Json:
        """Return the error as OpenAI's API shows it."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        told = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": told}


def refuse(holds: object, message: str, param: str | None = None, code: str | None = None) -> None:
    """Raise an `ApiError` with status 400 if something holds."""
    if holds:
        raise ApiError(message, param, code)


def listed(values: Collection[str]) -> str:
    """Return values as OpenAI's messages list them: `("a", "b", "c") -> "'a', 'b', and 'c'"`."""
    quoted = [f"'{value}'" for value in values]
    if len(quoted) < 3:
        return " and ".join(quoted)
    return f"{', '.join(quoted[:-1])}, and {quoted[-1]}"


def kind_of(value: Any, path: str, *kinds: type) -> None:
    """Refuse any other JSON type. A boolean is not a number; a whole number is a decimal."""
    if type(value) in kinds or (type(value) is int and float in kinds):
        return
    expected, got = " or ".join(NAMES[kind] for kind in kinds), NAMES[type(value)]
    told = f"Invalid type for '{path}': expected {expected}, but got {got} instead."
    raise ApiError(told, path, "invalid_type")


def text(least: int = 0, most: int | None = None, pattern: str = "") -> Check:
    """Accept a string of the right length and pattern."""

    def check(value: Any, path: str) -> None:
        kind_of(value, path, str)
        size = len(value)
        if size >= least and most is None and not pattern:
            return  # most strings end here
        told = f"with {{}} length {{}}, but got a string with length {size} instead."
        refuse(
            size < least,
            f"Invalid '{path}': string too short. Expected a string "
            + told.format("minimum", least),
            path,
            "string_below_min_length",
        )
        refuse(
            most is not None and size > most,
            f"Invalid '{path}': string too long. Expected a string " + told.format("maximum", most),
            path,
            "string_above_max_length",
        )
        refuse(
            pattern and not re.fullmatch(pattern, value),
            f"Invalid '{path}': string does not match pattern. Expected a string that matches "
            f"the pattern '^{pattern}$'.",
            path,
            "invalid_value",
        )

    return check


def _within(kind: type, low: float, high: float | None) -> Check:
    name = NAMES[kind].split()[1]

    def check(value: Any, path: str) -> None:
        kind_of(value, path, kind)
        for beyond, word, sign, bound in (
            (value < low, "below minimum", ">=", low),
            (high is not None and value > high, "above maximum", "<=", high),
        ):
            refuse(
                beyond,
                f"Invalid '{path}': {name} {word} value. Expected a value {sign} {bound}, but "
                f"got {str(value)[:40]} instead.",
                path,
                f"{name}_{word.replace('imum', '').replace(' ', '_')}_value",
            )

    return check


def whole(low: int, high: int | None = None) -> Check:
    """Accept an integer in a range."""
    return _within(int, low, high)


def decimal(low: float, high: float) -> Check:
    """Accept a number in a range."""
    return _within(float, low, high)


def flag(value: Any, path: str) -> None:
    """Accept true and false."""
    kind_of(value, path, bool)


def mapping(value: Any, path: str) -> None:
    """Accept any object."""
    kind_of(value, path, dict)


def anything(value: Any, path: str) -> None:
    """Accept any value: something else checks it."""


def one_of(*values: str) -> Check:
    """Accept one of these strings."""

    def check(value: Any, path: str) -> None:
        kind_of(value, path, str)
        if value not in values:
            told = f"Invalid value: '{value[:100]}'. Supported values are: {listed(values)}."
            raise ApiError(told, path, "invalid_value")

    return check


def items(item: Check, least: int = 0, most: int = 2048) -> Check:
    """Accept an array of `least` to `most` items, if each passes the check."""

    def check(value: Any, path: str) -> None:
        kind_of(value, path, list)
        size = len(value)
        refuse(
            size < least,
            f"Invalid '{path}': empty array. Expected an array with minimum length {least}, but "
            "got an empty array instead.",
            path,
            "empty_array",
        )
        refuse(
            size > most,
            f"Invalid '{path}': array too long. Expected an array with maximum length {most}, "
            f"but got an array with length {size} instead.",
            path,
            "array_above_max_length",
        )
        for index, part in enumerate(value):
            item(part, f"{path}[{index}]")

    return check


def fields(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """Accept an object with the required keys, perhaps optional ones, and no others."""
    known = {**required, **(optional or {})}

    def check(value: Any, path: str) -> None:
        kind_of(value, path or "body", dict)
        inside = f"{path}." if path else ""
        if unknown := value.keys() - known.keys():
            where = inside + next(key for key in value if key in unknown)[:100]
            raise ApiError(f"Unknown parameter: '{where}'.", where, "unknown_parameter")
        if missing := required.keys() - value.keys():
            where = inside + next(key for key in required if key in missing)
            told = f"Missing required parameter: '{where}'."
            raise ApiError(told, where, "missing_required_parameter")
        for key, part in value.items():
            known[key](part, inside + key)

    return check


def tagged(key: str, kinds: Mapping[str, Check], default: str | None = None) -> Check:
    """Accept an object whose `key` names its kind, and check it as that kind."""
    known = one_of(*kinds)

    def check(value: Any, path: str) -> None:
        kind_of(value, path, dict)
        kind = value.get(key, default)
        if key not in value and default is None:
            where = f"{path}.{key}"
            told = f"Missing required parameter: '{where}'."
            raise ApiError(told, where, "missing_required_parameter")
        known(kind, f"{path}.{key}")
        kinds[kind](value, path)

    return check


def by_type(checks: Mapping[type, Check]) -> Check:
    """Accept a value of one of several JSON types, each with its own check."""

    def check(value: Any, path: str) -> None:
        kind_of(value, path, *checks)
        checks[type(value)](value, path)

    return check


def nullable(check: Check) -> Check:
    """Accept null too."""
    return lambda value, path: None if value is None else check(value, path)


def metadata(value: Any, path: str) -> None:
    """Accept at most 16 pairs: keys of at most 64 characters, strings of at most 512."""
    kind_of(value, path, dict)
    refuse(
        len(value) > 16,
        f"Invalid '{path}': too many properties. Expected an object with at most 16 properties, "
        f"but got an object with {len(value)} properties instead.",
        path,
        "object_above_max_properties",
    )
    for key, part in value.items():
        text(most=64)(key, f"{path} key")
        text(most=512)(part, f"{path}.{key}")
