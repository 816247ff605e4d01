"""A simulated day: who asks what, on behalf of which team. The same seed, the same day."""

import random
from dataclasses import dataclass

OWN_MODEL = "shop-topics"  # our own, traced by hand; Langfuse has no price for it
MISSING_MODEL = "gpt-4o-minni"  # a typing error in the configuration of one feature
COMMON_QUESTIONS = (
    "What does express delivery cost?",
    "How long is the warranty?",
    "Can I pay by invoice?",
    "Are your shoes small?",
)
TEAMS = {"support": ("chat", "mail"), "sales": ("chat", "offers"), "logistics": ("tracking",)}
USERS = ("ada", "bob", "cyd", "dan", "eve", "fay", None)  # None: a job that runs at night


@dataclass(frozen=True)
class Request:
    """One question of the day, the model it is meant for, and on whose behalf it is asked."""

    question: str
    model: str
    team: str
    feature: str
    user: str | None


def plan_traffic(count: int, model: str, seed: int = 4) -> list[Request]:
    """Return a day's requests: some are common and repeat, one in twenty is for OWN_MODEL."""
    dice = random.Random(seed)  # noqa: S311  a simulation, not a secret
    day = []
    for number in range(count):
        team = dice.choice(sorted(TEAMS))
        feature = dice.choice(TEAMS[team])
        fresh = f"When will order A-{1000 + number} be delivered?"
        question = dice.choice(COMMON_QUESTIONS) if dice.random() < 0.4 else fresh
        asked = OWN_MODEL if dice.random() < 0.05 else model
        if feature == "offers" and dice.random() < 0.2:
            asked = MISSING_MODEL
        day.append(Request(question, asked, team, feature, dice.choice(USERS)))
    return day
