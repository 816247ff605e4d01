"""A request and its answer, in whichever of OpenAI's two protocols it came."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from local_model.catalog import Model
from local_model.shape import Json


@dataclass(frozen=True)
class Message:
    """One message of a conversation."""

    role: str  # system, developer, user, assistant or tool
    texts: tuple[str, ...] = ()
    calls: tuple[Json, ...] = ()  # of an assistant, as chat completions write them
    name: str = ""
    unseen: tuple[str, ...] = ()  # the kinds of parts that are not text: image, file, audio

    @property
    def text(self) -> str:
        """All the text in it."""
        return "\n".join(self.texts)


@dataclass(frozen=True)
class Tool:
    """A function that may be called."""

    name: str
    description: str
    parameters: Json


@dataclass(frozen=True)
class Ask:
    """A request that has passed every check."""

    model: Model
    messages: tuple[Message, ...]
    digest: str  # of the whole request: ids are made from it
    tools: tuple[Tool, ...] = ()
    choice: str = "auto"  # or none, required
    parallel: bool = True
    form: Literal["text", "json_object", "json_schema"] = "text"
    schema: Json = field(default_factory=dict)
    effort: str = "none"
    limit: int | None = None  # of output tokens, including those of reasoning
    stop: tuple[str, ...] = ()
    extra: str = ""  # the JSON of tools and schema, which is part of the prompt too
    caches: bool = True

    @property
    def unseen(self) -> str:
        """What the model does not look at: `"2 images, 1 file"`, or an empty string."""
        kinds = Counter(kind for message in self.messages for kind in message.unseen)
        return ", ".join(f"{n} {kind}{'s' * (n > 1)}" for kind, n in kinds.items())

    def id(self, prefix: str, part: str = "") -> str:
        """Return an id: the same request always gets the same one."""
        return prefix + hashlib.sha256(f"{self.digest} {part}".encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Call:
    """A tool call: `arguments` is JSON, or only its beginning if a limit cut it off."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Usage:
    """The tokens of one call."""

    input: int
    cached: int  # of the input, read from the prompt cache
    written: int  # of the input, written to it
    output: int
    reasoning: int  # of the output


@dataclass(frozen=True)
class Answer:
    """What the model says: text, or calls."""

    text: str
    calls: tuple[Call, ...]
    finish: Literal["stop", "length", "tool_calls"]
    usage: Usage
