"""The tokens of a call, counted in one place: input, cached, written, reasoning, output."""

from itertools import accumulate, takewhile

from local_model.exchange import Ask
from local_model.tokens import count_message_tokens, count_tokens

# Parts that are not text are ignored. Each counts as much as a 1024 x 1024 image in high
# detail for gpt-4o: 85 + 4 tiles x 170, according to OpenAI's guide "Images and vision".
UNSEEN_TOKENS = 765
LEAST_CACHED = 1024  # tokens: a shorter prompt is not cached, as OpenAI documents
STEP = 128
BLOCK = 32  # characters: beginnings are compared block by block
MOST_BLOCKS = 100_000  # kept for all prompts together; the oldest go first


def count_input(ask: Ask) -> int:
    """Return the tokens of a prompt: messages, tools, schema, and parts that are not text."""
    rows = [
        {
            "role": message.role,
            "content": [{"text": text} for text in message.texts],
            "tool_calls": list(message.calls),
            "name": message.name,
        }
        for message in ask.messages
    ]
    unseen = sum(len(message.unseen) for message in ask.messages)
    counted = count_message_tokens(rows, ask.model.name).tokens
    return counted + count_tokens(ask.extra, ask.model.name).tokens + unseen * UNSEEN_TOKENS


class PromptCache:
    """Remembers the beginnings of prompts, as OpenAI's prompt cache does."""

    def __init__(self) -> None:
        self._seen: dict[int, None] = {}  # in the order they were last sent

    def look_up(self, ask: Ask, tokens: int) -> tuple[int, int]:
        """Return how many tokens of a prompt were cached, and how many are written now.

        As OpenAI documents, it caches the longest beginning that was sent to this model
        before, from 1,024 tokens on, in steps of 128. Only models that charge for writing
        report how much they wrote.
        """
        if tokens < LEAST_CACHED or not ask.caches:
            return 0, 0
        text = ask.extra + "".join(f"{m.role}\n{m.text}\n{m.calls or ''}" for m in ask.messages)
        blocks = (text[start : start + BLOCK] for start in range(0, len(text), BLOCK))
        start = hash(ask.model.name)
        keys = list(accumulate(blocks, lambda key, block: hash((key, block)), initial=start))[1:]
        known = sum(1 for _ in takewhile(self._seen.__contains__, keys))
        for key in keys:
            self._seen.pop(key, None)
            self._seen[key] = None
        while len(self._seen) > MOST_BLOCKS:
            del self._seen[next(iter(self._seen))]
        found = count_tokens(text[: known * BLOCK], ask.model.name).tokens
        cached = min(found, tokens) // STEP * STEP if found >= LEAST_CACHED else 0
        written = tokens // STEP * STEP - cached if ask.model.writes_cache else 0
        return cached, written
