"""What a call used, split into buckets that do not overlap."""

import re
from collections.abc import Mapping
from typing import Any

_WHOLE = re.compile(r"[0-9]{1,18}")
# Anthropic counts cache writes twice: in total, and again by how long they are kept.
WRITTEN, BY_LIFETIME = "cache_creation_input_tokens", "cache_creation"


def usage_buckets(usage: Mapping[str, Any]) -> dict[str, int]:
    """Return the tokens of a call by bucket, and their `total`, as Langfuse stores them.

    OpenAI counts cached tokens twice: in `prompt_tokens` and again in its details. Langfuse
    takes them out of `input`. All other names stay as they are. A count that is negative,
    fractional or not a number is left out.

    `usage_buckets({"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11,
    "prompt_tokens_details": {"cached_tokens": 4}})
    -> {"input": 5, "output": 2, "total": 11, "input_cached_tokens": 4}`
    """
    buckets = _of_openai(usage)
    if buckets is None:
        buckets = {**_counts(usage), **_named(BY_LIFETIME, ".", _counts(usage.get(BY_LIFETIME)))}
        parts = [n for bucket, n in buckets.items() if bucket.startswith(f"{BY_LIFETIME}.")]
        _take_out(buckets, WRITTEN, parts)
    if buckets:
        buckets.setdefault("total", sum(buckets.values()))
    return buckets


def _of_openai(usage: Mapping[str, Any]) -> dict[str, int] | None:
    """Split usage that has exactly the keys of OpenAI's chat, responses or embeddings."""
    if usage.keys() == {"prompt_tokens", "total_tokens"}:  # an embedding has no output
        return _renamed(_counts(usage), {"prompt_tokens": "input", "total_tokens": "total"})
    for sides in (("prompt_tokens", "completion_tokens"), ("input_tokens", "output_tokens")):
        own = {*sides, "total_tokens"}
        if own <= usage.keys() <= own | {f"{side}_details" for side in sides}:
            break
    else:
        return None
    names = dict(zip((*sides, "total_tokens"), ("input", "output", "total"), strict=True))
    buckets = _renamed(_counts(usage), names)
    for key in sides:
        details = _counts(usage.get(f"{key}_details"))
        _take_out(buckets, names[key], list(details.values()))
        buckets |= _named(names[key], "_", details)
    return buckets


def _renamed(counts: Mapping[str, int], names: Mapping[str, str]) -> dict[str, int]:
    return {names[key]: count for key, count in counts.items()}


def _named(of: str, separator: str, counts: Mapping[str, int]) -> dict[str, int]:
    return {f"{of}{separator}{key}": count for key, count in counts.items()}


def _take_out(buckets: dict[str, int], whole: str, parts: list[int]) -> None:
    if whole in buckets:
        buckets[whole] = max(buckets[whole] - sum(parts), 0)


def _counts(value: Any) -> dict[str, int]:
    if not isinstance(value, Mapping):
        return {}
    counts = {key: _count(count) for key, count in value.items()}
    return {key: count for key, count in counts.items() if count is not None}


def _count(value: Any) -> int | None:
    """Return a number of tokens: `_count("12") -> 12`, `_count(-1) -> None`."""
    if isinstance(value, str):
        return int(value) if _WHOLE.fullmatch(value.strip()) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if value >= 0 and value == value // 1 else None
