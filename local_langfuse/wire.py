"""Read and check what crosses the wire: JSON, times, query parameters and cursors."""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.datastructures import QueryParams

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MAX_DEPTH = 100  # SQLite's own JSON functions give up at 1,000 levels


class Refused(ValueError):  # noqa: N818  an answer, not a failure of ours
    """Says why a request, or one item of a batch, is not accepted."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def pairs(text: str) -> dict[str, str]:
    """Return names with their columns: `pairs("id=id userId=user_id")`. Only for our own tables."""
    return dict(pair.split("=", 1) for pair in text.split())


def parse(text: bytes | str, what: str = "the body") -> Any:
    """Return the value of a JSON text; raise `Refused` for anything else, such as NaN."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise Refused(f"{what} is nested too deeply") from None
    except ValueError as error:
        raise Refused(f"Invalid JSON in {what}: {error}") from None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def check(value: Any, depth: int = 0) -> Any:
    """Return a parsed value unchanged; raise `Refused` if it cannot be stored or sent back."""
    if depth > MAX_DEPTH:
        raise Refused(f"nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, float) and not math.isfinite(value):
        raise Refused("a number is too large")
    if isinstance(value, str):
        check_text(value)
    if isinstance(value, dict):
        for key in value:
            check_text(key)
        value = {key: check(item, depth + 1) for key, item in value.items()}
    elif isinstance(value, list):
        value = [check(item, depth + 1) for item in value]
    return value


def check_text(text: str) -> None:
    """Refuse half of a surrogate pair: it is not a character, and UTF-8 cannot encode it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Refused("a string contains half of a surrogate pair") from None


def decoded(value: Any) -> Any:
    """Return the value of a JSON text; return anything else unchanged."""
    if not isinstance(value, str):
        return value
    try:
        return check(parse(value))
    except Refused:
        return value


def to_json(value: Any) -> str:
    """Return a value as compact JSON: equal values give equal texts."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def as_object(body: Any, what: str = "the body") -> dict[str, Any]:
    """Return a JSON object; raise `Refused` if it is something else."""
    if not isinstance(body, dict):
        raise Refused(f"{what} must be a JSON object")
    return body


def text_in(item: Mapping[str, Any], key: str) -> str | None:
    """Return the text under a key, or None if it is absent, null or empty."""
    value = item.get(key)
    if value is not None and not isinstance(value, str):
        raise Refused(f"{key} must be a string")
    return value or None


def json_in(item: Mapping[str, Any], key: str) -> str | None:
    """Return the value under a key as JSON, or None if it is absent or null."""
    return None if item.get(key) is None else to_json(item[key])


def texts(value: Any, what: str) -> list[str]:
    """Return a list of strings without duplicates."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise Refused(f"{what} must be a list of strings")
    return list(dict.fromkeys(value))


def stamps(row: Any) -> dict[str, str]:
    """Return when a row was created and updated, as the API shows it."""
    names = {"createdAt": "created_us", "updatedAt": "updated_us"}
    return {name: iso(row[column], "milliseconds") for name, column in names.items()}


def now_us() -> int:
    """Return the time in microseconds since 1970."""
    return (datetime.now(UTC) - EPOCH) // timedelta(microseconds=1)


def microseconds(text: Any, what: str) -> int:
    """Return an ISO 8601 time with an offset as microseconds since 1970."""
    try:
        time = datetime.fromisoformat(text)
        us = (time.astimezone(UTC) - EPOCH) // timedelta(microseconds=1)
    except (TypeError, ValueError, OverflowError):
        time = datetime.max  # noqa: DTZ901  without an offset, so refused below
    if time.tzinfo is None:
        raise Refused(f"{what} must be a time with an offset, such as 2026-11-20T09:00:00Z")
    return us


def iso(us: int, timespec: str = "microseconds") -> str:
    """Return microseconds since 1970 as a time: `iso(0, "seconds") -> "1970-01-01T00:00:00Z"`."""
    time = EPOCH + timedelta(microseconds=us)
    return time.isoformat(timespec=timespec).replace("+00:00", "Z")


class Query:
    """The query parameters of a request, each read as the type it should have."""

    def __init__(self, params: QueryParams) -> None:
        self._params = params
        if any("\0" in text for pair in params.multi_items() for text in pair):
            raise Refused("a query parameter contains a NUL character")

    def text(self, name: str) -> str | None:
        """Return the parameter, or None if it is absent."""
        return self._params.get(name)

    def texts(self, name: str) -> list[str] | None:
        """Return every value of a parameter that may be repeated, or None."""
        return self._params.getlist(name) or None

    def words(self, name: str) -> list[str] | None:
        """Return a comma-separated parameter as a list, or None."""
        text = self._params.get(name)
        return None if text is None else [word for word in text.split(",") if word]

    def count(self, name: str, default: int, maximum: int) -> int:
        """Return a whole number from 1 to `maximum`."""
        return whole(self._params.get(name, str(default)), name, maximum)

    def number(self, name: str) -> float | None:
        """Return a finite number, or None."""
        text = self._params.get(name)
        return None if text is None else finite(text, name)

    def flag(self, name: str) -> bool | None:
        """Return true or false, or None."""
        text = self._params.get(name)
        if text not in (None, "true", "false"):
            raise Refused(f"{name} must be true or false")
        return None if text is None else text == "true"


def whole(text: str, what: str, maximum: int) -> int:
    """Return a text as a whole number from 1 to `maximum`."""
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= maximum):
        raise Refused(f"{what} must be a whole number from 1 to {maximum}")
    return int(text)


def finite(value: Any, what: str) -> float:
    """Return a number, or the text of one, as a float."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise Refused(f"{what} must be a number")
    return number


def cursor_of(position: Sequence[int | str]) -> str:
    """Return the place where a page ended, as an opaque string for the next request."""
    return base64.urlsafe_b64encode(to_json(list(position)).encode()).decode()


def position_of(cursor: str, kinds: tuple[type, ...]) -> list[int | str]:
    """Return what `cursor_of` was given; raise `Refused` for anything it did not make."""
    try:
        position = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        fits = isinstance(position, list) and tuple(map(type, position)) == kinds
        if fits and storable(check(position)):
            return list(position)
    except (ValueError, RecursionError):
        pass
    raise Refused("cursor must come from the page before")


def storable(values: list[Any]) -> bool:
    """Tell whether the whole numbers among the values fit into SQLite's 64 bits."""
    return all(-(2**63) <= value < 2**63 for value in values if isinstance(value, int))
