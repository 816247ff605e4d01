"""The shop's handbook, and a fake retriever: word overlap in place of a vector database."""

import re
from dataclasses import dataclass
from pathlib import Path

# One passage per line: its name, a colon, its text.
HANDBOOK = dict(
    line.split(": ", 1)
    for line in Path(__file__).with_name("handbook.txt").read_text("utf-8").splitlines()
)


@dataclass(frozen=True)
class Passage:
    """A handbook passage that a search found; `score` is the share of the query's words in it."""

    id: str
    text: str
    score: float


def handbook() -> list[str]:
    """Return all passages of the shop's handbook."""
    return list(HANDBOOK.values())


def search(query: str, limit: int = 3) -> list[Passage]:
    """Return the passages that share the most words with the query, best first.

    Passages that share none are left out, so the list can be empty.

    `search("return shoes")[0].id -> "returns"`
    """
    asked = words(query)
    found = [
        Passage(name, text, round(len(asked & words(text)) / len(asked), 3) if asked else 0.0)
        for name, text in HANDBOOK.items()
    ]
    ranked = sorted(found, key=lambda passage: -passage.score)
    return [passage for passage in ranked[:limit] if passage.score > 0]


def words(text: str) -> set[str]:
    """Return the words that carry meaning, without their endings.

    `words("Can I return the shoes?") -> {"return", "shoe"}`
    """
    plain = set(re.findall(r"[a-z0-9]+", text.lower())) - _EMPTY_WORDS
    return {re.sub(r"(ing|ed|s|y)$", "", word) if len(word) > 3 else word for word in plain}


_EMPTY_WORDS = set(
    re.findall(
        r"\w+",
        "a an and are as at be because by can do does for from has have how i in is it its my not "
        "of on or our that the their to was we what when where which will with you your",
    )
)
