"""Read a prompt: which sentence asks, which instructs, and which states a fact."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import takewhile

from local_model.exchange import Message

WORTH_ADDING = 0.3  # share of the question: what a second sentence must add
NOT_SEEN = "(The local model did not look at "  # how our own note begins

EMPTY_WORDS = frozenset(
    re.findall(
        r"\w+",
        "am an and are as at be been but by can could did do does for from had has have how if in "
        "is it its me my no not of on or our please shall should so than that the their them there "
        "they this to was we were what when where which who why will with would you your",
    )
)
# The beginning of a sentence that tells the model what to do, which is never an answer.
INSTRUCTION = re.compile(
    r"(you are|you will|your (task|job|role|answer)|act as|answer|reply|respond|say|write|rewrite|"
    r"summari[sz]e|cite|quote|judge|rate|score|classify|decide|extract|translate|explain|think|"
    r"be (brief|concise|short|polite|friendly|helpful)|(only )?us(e|ing) only|only (use|answer)|"
    r"base your|keep (it|your)|(always|do not|don['’]t|never) (answer|reply|invent|guess|make up|"  # noqa: RUF001 (typed by people)
    r"mention|say|add|use))\b",
    re.IGNORECASE,
)
# What tells it to abstain: a condition, a negation, where to look, and what to say.
ABSTAIN = re.compile(
    r"(?=.*\b(if|when|where|unless|otherwise)\b)(?=.*(\b(no|not|nothing|cannot|unless)\b|n.t\b))"
    r"(?=.*\b(passage|context|text|document|source|handbook|information|answer|find|found|cover|"
    r"contain|know))(?=.*\b(say|answer|reply|respond|write)\b)",
    re.IGNORECASE,
)
# The label at the beginning of a line that says what the line is.
SECTION = re.compile(
    r"^[^\w\n]*(question|context|passages|sources|answer|response|output)\s*:",
    re.IGNORECASE | re.MULTILINE,
)
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"”'])\s+(?![a-z])")
A_WORD = re.compile(r"[^\W_]{2,}")
ENDING = re.compile(r"(?<=\w{2})(ing|ies|ed|es|s|e|y)$")
DOUBLED = re.compile(r"(\D)\1$")


@dataclass(frozen=True)
class Facts:
    """Sentences that state facts."""

    sentences: Sequence[str]

    @cached_property
    def _bags(self) -> list[set[str]]:
        return [words(sentence) for sentence in self.sentences]

    def nearest(self, question: str, limit: int) -> tuple[list[str], float]:
        """Return the facts nearest to a question, and the share of it that the first one covers.

        The fewer facts contain a word, the more it weighs. Another fact is added only if it
        covers much of what is still missing.
        """
        asked, bags = words(question), self._bags
        holders = Counter(word for bag in bags for word in asked & bag)
        weight = {word: math.log(1 + len(bags) / max(1, holders[word])) for word in asked}
        # fsum is exact: a sum must not depend on the order of a set
        total = math.fsum(weight.values()) or 1

        def share(place: int) -> float:
            return math.fsum(weight[word] for word in missing & bags[place]) / total

        near = [place for place, bag in enumerate(bags) if asked & bag] or [0]
        missing, picked = set(weight), dict[int, float]()
        while len(picked) < min(limit, len(bags)):
            best = max(near, key=share)
            if picked and share(best) < WORTH_ADDING:
                break
            picked[best] = share(best)
            missing -= bags[best]
        return [self.sentences[place] for place in sorted(picked)], next(iter(picked.values()), 0.0)

    def sharing(self, question: str) -> list[str]:
        """Return the facts that share a word with a question, without duplicates."""
        asked, pairs = words(question), zip(self.sentences, self._bags, strict=True)
        return list(dict.fromkeys(sentence for sentence, bag in pairs if asked & bag))


@dataclass
class Prompt:
    """The messages of a request, with their sentences sorted by kind."""

    question: str = ""
    instructions: list[str] = field(default_factory=list)
    facts: Facts = field(default_factory=lambda: Facts([]))
    results: list[Facts] = field(default_factory=list)  # the latest result of each tool
    text: str = ""

    @cached_property
    def sections(self) -> dict[str, set[str]]:
        """The words of each labelled part: `{"question": ..., "context": ..., "answer": ...}`."""
        _, *parts = SECTION.split(self.text)
        return {
            name.lower(): words(text) for name, text in zip(parts[::2], parts[1::2], strict=True)
        }


def read(messages: Sequence[Message]) -> Prompt:
    """Sort a prompt: the user's last message asks, all others instruct or state facts.

    If the prompt ends with results of tools, only those are facts.
    """
    prompt = Prompt(text="\n".join(map(_text, messages)))
    asking = max((i for i, m in enumerate(messages) if m.role == "user"), default=-1)
    facts: list[str] = []
    for place, message in enumerate(messages):
        text = _text(message)
        if place == asking:
            prompt.question, text = _split_question(text)
        for sentence in _sentences(SECTION.sub("", text)):
            instructs = INSTRUCTION.match(sentence) or ABSTAIN.match(sentence)
            if instructs and message.role != "tool":
                prompt.instructions.append(sentence)
            elif not sentence.endswith(("?", ":")):  # a question, a heading
                facts.append(sentence)
    results = [*takewhile(lambda m: m.role == "tool", reversed(messages))][::-1]
    prompt.results = [Facts(found) for m in results if (found := list(_sentences(_text(m))))]
    if prompt.results:  # say what was looked up, near or not
        facts = [sentence for result in prompt.results for sentence in result.sentences]
        prompt.instructions = [i for i in prompt.instructions if not ABSTAIN.match(i)]
    if not facts:  # then there is only the line that asks: "Boots are warm. Are boots warm?"
        facts = [s for s in _sentences(prompt.question) if not s.endswith("?")]
    prompt.facts = Facts(facts)
    return prompt


def _text(message: Message) -> str:
    if message.role == "tool":
        return _plain(message.text)
    # Our own note in an earlier answer is not a fact.
    return re.sub(re.escape(NOT_SEEN) + r"[^)\n]*\)", "", message.text)


def _plain(content: str) -> str:
    """Return JSON as lines of words: `'{"status": "shipped"}' -> "status: shipped"`."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return content
    rows = value if isinstance(value, list) else [value]
    fields = [row.items() if isinstance(row, dict) else [("result", row)] for row in rows]
    text = "\n".join(", ".join(f"{k.replace('_', ' ')}: {v}" for k, v in row) for row in fields)
    return text.encode("utf-8", "replace").decode()  # an escape can stand for half a character


def _split_question(text: str) -> tuple[str, str]:
    """Split off the line that asks: after "Question:", or else with "?", or else the last one."""
    lines = [line for line in text.splitlines() if line.strip()] or [""]
    marked = [line for line in lines if re.match(r"\W*question\s*:", line, re.IGNORECASE)]
    asking = [line for line in lines if line.rstrip().endswith("?")]
    question = (marked or asking or lines)[-1]
    lines.remove(question)
    return re.sub(r"^\W*question\s*:\s*", "", question, flags=re.IGNORECASE), "\n".join(lines)


def _sentences(text: str) -> Iterator[str]:
    """Yield the sentences of each line; text in quotes is not split."""
    for line in filter(str.strip, text.splitlines()):
        parts: list[str] = []
        straight = opened = 0
        for part in SENTENCE_END.split(line.strip(" -*•\t")):
            parts.append(part)
            straight += part.count('"')
            opened += part.count("“") - part.count("”")
            if straight % 2 == 0 and opened == 0:
                yield from filter(None, [" ".join(parts).strip()])
                parts = []
        yield from filter(None, [" ".join(parts).strip()])


def keywords(text: str) -> list[str]:
    """Return the words that carry meaning: `"How do I return shoes?" -> ["return", "shoes"]`."""
    found = dict.fromkeys(A_WORD.findall(text.lower()))
    return [word for word in found if word not in EMPTY_WORDS]


def words(text: str) -> set[str]:
    """Return the words that carry meaning, cut to a stem: `"My shoes" -> {"sho"}`."""
    return set(map(_stem, keywords(text)))


@lru_cache(maxsize=10_000)
def _stem(word: str) -> str:
    return DOUBLED.sub(r"\1", ENDING.sub("", word))  # shipped, shipp, ship
