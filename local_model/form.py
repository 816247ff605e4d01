"""Structured output: fill in a JSON schema from the prompt."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from local_model.calls import kind_of_schema
from local_model.prompt import Prompt, words
from local_model.shape import ApiError, Json, refuse

SIMILARITY = re.compile(r"relevan|faithful|ground|support|similar|correct|accura|confiden|quality")
GROUNDED = re.compile(r"faithful|ground|support")
TOXIC = re.compile(r"toxic|insult|offens")
INSULT = re.compile(r"\b(idiot|stupid|dumb|moron|fool|shut up)", re.IGNORECASE)
NUMBER = r"\d{1,15}(?:\.\d{1,15})?"
A_RANGE = re.compile(rf"(?<!\d)({NUMBER})\s*(?:to|and|-)\s*({NUMBER})")
DEEPEST = 12
MOST_WORK = 400_000  # about as many microseconds, during which nobody else is answered


@dataclass
class Form:
    """Fills in a JSON schema from a prompt.

    A string is the sentence nearest to its name and the question. If the name or the
    description of a number or boolean is about similarity, it measures one (relevance: how
    much of the question is in the answer; faithfulness: how much of the answer is in the
    context). If it is about toxicity, it looks for a few insults. Any other number is the
    first one in the nearest sentence; any other boolean is false.
    """

    root: Json
    prompt: Prompt
    nothing: str  # what to say if there is nothing to read
    work: int = 0

    def fill(self, schema: Any, label: str = "", depth: int = 0) -> Any:
        """Return a value for a schema; `label` says in words what it is for."""
        refuse(depth >= DEEPEST, "The JSON schema is nested too deeply for the local model.")
        if isinstance(schema, dict) and isinstance(schema.get("description"), str):
            label = f"{label} {schema['description']}"
        label = label.lower()
        schema = self._concrete(schema)
        options = schema.get("enum") or [v for k, v in schema.items() if k == "const"]
        refuse(not isinstance(options, list), "The JSON schema has an `enum` that is not a list.")
        self._take(len(label) + sum(len(str(option)) for option in options))
        if options:
            near = words(self._sentence(label))
            return max(options, key=lambda option: len(words(str(option)) & near))
        match kind_of_schema(schema):
            case "object":
                inside = schema.get("properties") or {}
                refuse(not isinstance(inside, dict), "The JSON schema has broken `properties`.")
                value: Any = {key: self.fill(part, key, depth + 1) for key, part in inside.items()}
            case "array":
                value = [self.fill(schema.get("items"), label, depth + 1)]
            case "string":
                value = self._sentence(label)
            case "boolean":
                value = bool(SIMILARITY.search(label)) and self._similarity(label) >= 0.5
            case "number":
                value = round(self._number(schema, label), 2)
            case "integer":
                value = round(self._number(schema, label))
            case "null":
                value = None
            case unknown:
                raise ApiError(f"The JSON schema has an unknown type: {str(unknown)[:100]!r}.")
        return value

    def _take(self, characters: int) -> None:
        """Count the work, and refuse what would take too long."""
        self.work += 20 + len(self.prompt.facts.sentences)
        self.work += (characters + len(self.prompt.question)) // 2
        refuse(
            self.work > MOST_WORK,
            "The JSON schema is too large for the local model to fill in from such a long prompt.",
        )

    def _concrete(self, schema: Any) -> Json:
        """Follow references, and the first choice that is not null, to a schema with a type."""
        for _ in range(DEEPEST):
            if not isinstance(schema, dict):
                raise ApiError("The JSON schema lacks a part, or has one that is not an object.")
            choices = schema.get("anyOf") or schema.get("allOf")
            if "$ref" in schema:
                schema = self._referred(str(schema["$ref"]))
            elif isinstance(choices, list):
                schema = next((c for c in choices if c != {"type": "null"}), {"type": "null"})
            else:
                return schema
        raise ApiError("The JSON schema refers to itself.")

    def _referred(self, reference: str) -> Any:
        found: Any = self.root
        for key in filter(None, reference.removeprefix("#").split("/")):
            if not isinstance(found, dict) or key not in found:
                raise ApiError(f"The JSON schema has no {reference[:100]!r}.")
            found = found[key]
        return found

    def _sentence(self, label: str) -> str:
        found, _ = self.prompt.facts.nearest(f"{label} {self.prompt.question}", limit=1)
        return found[0] if found else self.nothing

    def _number(self, schema: Json, label: str) -> float:
        said = A_RANGE.search(label)
        low, high = map(float, said.groups()) if said else (0.0, 1.0)
        bounds = [_bound(schema.get("minimum")), _bound(schema.get("maximum"))]
        low, high = (
            low if bounds[0] is None else bounds[0],
            high if bounds[1] is None else bounds[1],
        )
        if TOXIC.search(label):
            return high if INSULT.search(self.prompt.text) else low
        if SIMILARITY.search(label):
            return low + self._similarity(label) * (high - low)
        number = re.search(NUMBER, self._sentence(label))
        value = float(number[0]) if number else 0.0
        bounded = said or any(bound is not None for bound in bounds)
        return low if bounded and not low <= value <= high else value

    def _similarity(self, label: str) -> float:
        section = self.prompt.sections
        answer = next((section[n] for n in ("answer", "response", "output") if n in section), None)
        if answer is None:
            return self.prompt.facts.nearest(self.prompt.question, limit=1)[1]
        sources = [section[n] for n in ("context", "passages", "sources") if n in section]
        if GROUNDED.search(label):
            return len(answer & set().union(*sources)) / (len(answer) or 1)
        asked = section.get("question") or words(self.prompt.question)
        return len(answer & asked) / (len(asked) or 1)


def _bound(value: Any) -> float | None:
    fits = isinstance(value, int | float) and abs(value) < 1e15
    return float(value) if fits else None


def refuse_schema(schema: Json, what: str, param: str, code: str | None, *, strict: bool) -> None:
    """Refuse a schema that is not an object or, if it is strict, leaves anything open."""

    def wrong(why: str) -> ApiError:
        return ApiError(f"Invalid schema for {what}: {why}", param, code)

    if schema.get("type") != "object":
        got = str(schema.get("type"))[:100]
        raise wrong(f"schema must be a JSON Schema of 'type: \"object\"', got 'type: \"{got}\"'.")
    for path, part in _objects(schema) if strict else ():
        properties, required = part.get("properties") or {}, part.get("required")
        if part.get("additionalProperties") is not False:
            raise wrong(
                f"In context={path}, 'additionalProperties' is required to be supplied and to be "
                "false."
            )
        missing = [
            key for key in properties if not isinstance(required, list) or key not in required
        ]
        if missing:
            raise wrong(
                f"In context={path}, 'required' is required to be supplied and to be an array "
                f"including every key in properties. Missing '{missing[0][:100]}'."
            )


def _objects(schema: Json) -> Iterable[tuple[tuple[str, ...], Json]]:
    """Yield every object schema inside a schema, with the path to it."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), schema)]
    while waiting:
        path, part = waiting.pop()
        if isinstance(part, list):
            waiting += [((*path, str(index)), item) for index, item in enumerate(part)]
        elif isinstance(part, dict) and len(path) < 50:
            if part.get("type") == "object" and isinstance(part.get("properties", {}), dict):
                yield path, part
            for key in ("properties", "items", "anyOf", "$defs", "definitions"):
                inside = part.get(key)
                if key in ("properties", "$defs", "definitions") and isinstance(inside, dict):
                    waiting += [((*path, key, name), item) for name, item in inside.items()]
                elif isinstance(inside, dict | list):
                    waiting.append(((*path, key), inside))
