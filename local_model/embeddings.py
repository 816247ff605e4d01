"""Embeddings: a hashed bag of words, so that texts that share words are near each other."""

import asyncio
import base64
import hashlib
import json
import math
import struct
from typing import Any

from local_model.catalog import Clock, find_for
from local_model.prompt import words
from local_model.rules import MOST_CHARACTERS
from local_model.shape import ApiError, Json, by_type, fields, items, one_of, refuse, text, whole
from local_model.tokens import count_tokens, loaded

MOST_TOKENS = 300_000  # in all texts of a request together, like OpenAI
MOST_TOKENS_OF_A_TEXT = 8_192


def _no_tokens(_: Any, path: str) -> None:
    raise ApiError("The local model cannot do this: it embeds texts, not tokens.", path)


_TEXT = text(1)
_ITEM = by_type({str: _TEXT, int: _no_tokens, list: _no_tokens})
EMBEDDINGS = fields(
    {"model": text(1), "input": by_type({str: _TEXT, list: items(_ITEM, 1)})},
    {"dimensions": whole(1), "encoding_format": one_of("float", "base64"), "user": text()},
)


async def embeddings(body: Json, clock: Clock) -> bytes:
    """Return the answer to a request as JSON. Between two texts, other requests get a turn."""
    EMBEDDINGS(body, "")
    model = find_for(body["model"], clock, embeds=True)
    size = body.get("dimensions", model.dimensions)
    whole(1, model.dimensions)(size, "dimensions")
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    rows, tokens = [], 0
    await loaded(model.name)
    for index, one in enumerate(texts):
        tokens += _counted(one, model.name)
        refuse(
            tokens > MOST_TOKENS,
            f"All texts together have more than {MOST_TOKENS} tokens.",
            "input",
        )
        vector: Any = embed(one, size)
        if body.get("encoding_format") == "base64":
            vector = base64.b64encode(struct.pack(f"<{size}f", *vector)).decode()
        rows.append(json.dumps({"object": "embedding", "index": index, "embedding": vector}))
        await asyncio.sleep(0)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    rest = json.dumps({"object": "list", "model": body["model"], "usage": usage})
    return f'{rest[:-1]}, "data": [{", ".join(rows)}]}}'.encode()


def _counted(one: str, model: str) -> int:
    tokens = count_tokens(one, model).tokens if len(one) <= MOST_CHARACTERS else len(one)
    refuse(
        tokens > MOST_TOKENS_OF_A_TEXT,
        f"This model's maximum context length is {MOST_TOKENS_OF_A_TEXT} tokens, however you "
        f"requested {tokens} tokens. Please reduce your prompt.",
        "input",
        "context_length_exceeded",
    )
    return tokens


def embed(one: str, size: int) -> list[float]:
    """Return a vector of length 1. Each word adds to one place: texts that share words are near."""
    vector = [0.0] * size
    for word in words(one) or {one}:
        digest = hashlib.sha256(word.encode()).digest()
        vector[int.from_bytes(digest[:8]) % size] += 1
    length = math.hypot(*vector)
    return [value / length for value in vector]
