"""Choose a tool, and find its arguments in the question."""

import json
import re
from collections.abc import Iterator
from typing import Any

from local_model.exchange import Ask, Call, Tool
from local_model.prompt import Prompt, words
from local_model.shape import Json

FREE_TEXT = {"query", "question", "text", "message", "input", "search", "topic"}
IS_ID = re.compile(r"(^|_)(id|number|code|sku)$")
AN_ID = re.compile(r"\b[A-Za-z]+[-_]?\d[\w-]*|\b\d{3,}\b")
A_NAME = re.compile(r"(?<=[\"“])[^\"”]+(?=[\"”])|(?<=[a-z,] )[A-Z][a-z]+(?: [A-Z][a-z]+)*")
A_NUMBER = re.compile(r"(?<![\w.-])\d{1,15}(?:\.\d{1,15})?(?![\w-])")
MOST_CALLS = 16  # in one answer


def choose_calls(ask: Ask, prompt: Prompt) -> list[Call]:
    """Return calls of the tool nearest to the question, or none.

    The model calls a tool if it shares a word with the question and all its required
    arguments are in the question: once, or once for each of several ids of the same form
    ("Where are A-1042 and A-1043?"). If the request demands a call, it leaves out the
    arguments it cannot find.
    """
    if ask.choice == "none" or ask.messages[-1].role != "user":
        return []

    def shared(tool: Tool) -> int:
        names = _properties(tool.parameters)
        about = " ".join([tool.name, tool.description, *names])
        return len(words(about) & asked)

    asked = words(prompt.question)
    for count, tool in sorted(((shared(tool), tool) for tool in ask.tools), key=lambda t: -t[0]):
        given, complete = _arguments(tool.parameters, prompt.question)
        if ask.choice != "auto" or (count and complete):
            several = _several(given, prompt.question) if ask.parallel else [given]
            return [
                Call(ask.id("call_", f"{index} {tool.name}"), tool.name, json.dumps(arguments))
                for index, arguments in enumerate(several)
            ]
    return []


def _several(given: Json, question: str) -> list[Json]:
    """Return the arguments once for each id in the question that looks like the one found."""
    for name, value in given.items():
        if IS_ID.search(name) and isinstance(value, str):
            ids = [found for found in AN_ID.findall(question) if _form(found) == _form(value)]
            return [{**given, name: found} for found in dict.fromkeys(ids)][:MOST_CALLS] or [given]
    return [given]


def _form(identifier: str) -> str:
    return re.sub(r"\d+", "0", identifier)


def _properties(schema: Json) -> Json:
    properties = schema.get("properties")
    return properties if isinstance(properties, dict) else {}


def _arguments(schema: Json, question: str) -> tuple[Json, bool]:
    """Return the arguments found in the question, and whether all required ones are there."""
    numbers = iter(A_NUMBER.findall(question))
    properties = {k: v for k, v in _properties(schema).items() if isinstance(v, dict)}
    found = {name: _argument(name, part, question, numbers) for name, part in properties.items()}
    given = {name: value for name, value in found.items() if value is not None}
    required = schema.get("required")
    needed = required if isinstance(required, list) else []
    return given, all(isinstance(name, str) and name in given for name in needed)


def _argument(name: str, schema: Json, question: str, numbers: Iterator[str]) -> Any:
    kind = kind_of_schema(schema)
    options = schema.get("enum")
    if isinstance(options, list):
        asked = words(question)
        return next((option for option in options if words(str(option)) & asked), None)
    if kind in {"integer", "number"}:
        number = next(numbers, None)
        return number and (round if kind == "integer" else float)(float(number))
    if kind == "string" and name in FREE_TEXT:
        return question
    if kind == "string":
        match = AN_ID.search(question) if IS_ID.search(name) else A_NAME.search(question[:2000])
        return match and match[0]
    return True if kind == "boolean" and words(name) & words(question) else None


def kind_of_schema(schema: Json) -> str:
    """Return the type that a JSON schema asks for; of two, the one that is not null."""
    kind = schema.get("type")
    return str(next((k for k in kind if k != "null"), "null") if isinstance(kind, list) else kind)
