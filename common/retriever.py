"""The shop's handbook, and a fake retriever: word overlap in place of a vector database."""

import re
from dataclasses import dataclass

HANDBOOK = {
    "returns": (
        "Unworn shoes can be returned within 30 days. "
        "Shoes worn outside can only be exchanged when they have a fault."
    ),
    "refunds": (
        "A refund reaches the original card within 5 working days. "
        "Gift cards are refunded as a new gift card."
    ),
    "delivery": (
        "Standard delivery takes 3 working days and costs 4.90 euros. "
        "Orders above 60 euros are delivered free of charge."
    ),
    "express": (
        "Express delivery arrives on the next working day when you order before 14:00. "
        "It costs 12 euros and is not offered to islands."
    ),
    "sizes": (
        "Our shoes run half a size small, so choose the larger size when you are between two. "
        "An exchange for another size is free."
    ),
    "care": (
        "Leather shoes need wax once a month. Never dry wet shoes on a radiator, "
        "because heat makes leather crack."
    ),
    "warranty": (
        "Every pair has a warranty of two years against faults in stitching and soles. "
        "Normal wear is not a fault."
    ),
    "payment": (
        "You can pay by card, bank transfer or invoice. An invoice must be paid within 14 days."
    ),
    "contact": (
        "Our support answers on weekdays from 9:00 to 17:00. "
        "Outside these hours a message is answered on the next working day."
    ),
}


@dataclass(frozen=True)
class Passage:
    """A handbook passage as a search found it; `score` is the share of the words asked for."""

    id: str
    text: str
    score: float


def handbook() -> list[str]:
    """Return all passages of the shop's handbook."""
    return list(HANDBOOK.values())


def search(query: str, limit: int = 3) -> list[Passage]:
    """Return the passages that share most words with the query, best first.

    Passages that share no word are left out, so the answer can be empty.

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


_EMPTY_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be because by can do does for from has have how i in is it its my not "
        "of on or our that the their to was we what when where which will with you your",
    )
)
