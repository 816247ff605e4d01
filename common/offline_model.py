"""The offline model: an honest stand-in for a language model, behind the real `openai` package.

It is a transport: `OpenAI(http_client=httpx2.Client(transport=OfflineTransport()))`. It
speaks OpenAI's protocol (chat, streaming, tool calls, structured output, embeddings,
errors) without a network, and marks every response: header `x-offline-model: true`,
`system_fingerprint: "offline"`.

It understands nothing. It finds the sentences of its prompt that share most words with
the question, and says them. So it knows only what the prompt tells it, is wrong where
words mislead it, and abstains only where the prompt asks it to. The same prompt always
gets the same answer. Its pace is simulated, with the constants below.
"""

import asyncio
import base64
import functools
import hashlib
import itertools
import json
import math
import re
import struct
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2

from common.pricing import PRICES, Price, price_of
from common.tokens import count_message_tokens, count_tokens

FIRST_TOKEN_SECONDS = 0.010
TOKEN_SECONDS = 0.001  # taken for each word
EMBEDDING_SECONDS = 0.002

ENOUGH = 0.4  # share of the question: with less found, the model abstains where told to
WORTH_ADDING = 0.3  # share of the question: what a second sentence must add
NOTHING_TO_READ = "There is no text in this prompt that the offline model could answer from."
DIMENSIONS = {"text-embedding-3-small": 1536, "text-embedding-3-large": 3072}
# OpenAI answers under a dated name, and so does this.
DATES = {
    "2024-04-09": ["gpt-4-turbo"],
    "2024-07-18": ["gpt-4o-mini"],
    "2024-08-06": ["gpt-4o"],
    "2025-04-14": ["gpt-4.1", "gpt-4.1-mini", "gpt-4.1-nano"],
    "2025-04-16": ["o4-mini"],
    "2025-08-07": ["gpt-5", "gpt-5-mini", "gpt-5-nano"],
    "2025-11-13": ["gpt-5.1"],
}

Json = dict[str, Any]
Steps = Iterable[tuple[float, bytes]]  # wait so many seconds, then send these bytes


class ApiError(Exception):
    """A request the API refuses: status, message, and OpenAI's code for it."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


# --- Transport: requests in, paced bytes out ---------------------------------------------


class OfflineTransport(httpx2.BaseTransport, httpx2.AsyncBaseTransport):
    """Answers the requests of an `httpx2.Client` or `httpx2.AsyncClient` by itself."""

    def __init__(self) -> None:
        # Loads the vocabulary, which would otherwise count as the time of the first call.
        count_tokens("", "gpt-4o-mini")

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer a request of `httpx2.Client`."""
        request.read()
        return _respond(request)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer a request of `httpx2.AsyncClient`."""
        await request.aread()
        return _respond(request)


class _Paced(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """A body that arrives step by step: threads sleep meanwhile, tasks await."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def __iter__(self) -> Iterator[bytes]:
        for seconds, data in self._steps:
            time.sleep(seconds)
            yield data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for seconds, data in self._steps:
            await asyncio.sleep(seconds)
            yield data


def _respond(request: httpx2.Request) -> httpx2.Response:
    status, kind = 200, "application/json"
    try:
        body = json.loads(request.content or b"{}")
        steps = _route(request.method, request.url.path.removeprefix("/v1"), body)
        kind = "text/event-stream" if body.get("stream") else kind
    except ApiError as error:
        status, steps = error.status, _refusal(error)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        status, steps = 400, _refusal(ApiError(400, f"Not in OpenAI's format: {error!r}"))
    headers = {"content-type": kind, "x-offline-model": "true"}
    return httpx2.Response(status, headers=headers, stream=_Paced(steps))


def _refusal(error: ApiError) -> Steps:
    told = {"message": str(error), "type": "invalid_request_error", "code": error.code}
    return [(0.0, _encode({"error": {**told, "param": None}}))]


def _route(method: str, path: str, body: Json) -> Steps:
    if (method, path) == ("POST", "/chat/completions"):
        return _chat(body)
    if (method, path) == ("POST", "/embeddings"):
        return [(EMBEDDING_SECONDS, _encode(_embeddings(body)))]
    if (method, path) == ("GET", "/models"):
        own = {"object": "model", "created": 0, "owned_by": "offline"}
        rows = [{"id": price.model, **own} for price in PRICES]
        return [(0.0, _encode({"object": "list", "data": rows}))]
    raise ApiError(404, f"The offline model has no {method} {path}.")


def _encode(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


def _check(holds: object, message: str) -> None:
    if not holds:
        raise ApiError(400, message)


def _price(model: Any, *, embeds: bool) -> Price:
    """Return the model's row of the price table, which lists the models it can stand for."""
    _check(isinstance(model, str) and model, "`model` must be the name of a model.")
    price = price_of(model)
    # OpenAI knows a model by its own name only: no provider before it, no capitals.
    if price is None or not model.startswith(price.model):
        message = f"The model `{model}` does not exist or you do not have access to it."
        raise ApiError(404, message, "model_not_found")
    fits = embeds == (price.model in DIMENSIONS)
    _check(fits, f"`{model}` is {'not an' if embeds else 'an'} embedding model.")
    return price


# --- Chat: one completion, whole or as a stream ------------------------------------------


def _chat(body: Json) -> Steps:
    price = _price(body.get("model"), embeds=False)
    _check_chat(body)
    message, finish, usage = _complete(body, price)
    head = {
        "id": "chatcmpl-" + hashlib.sha256(_encode(body)).hexdigest()[:24],
        "created": int(time.time()),
        "model": _dated(body["model"]),
        "system_fingerprint": "offline",
    }
    if body.get("stream"):
        with_usage = (body.get("stream_options") or {}).get("include_usage")
        return _events(head, message, finish, usage if with_usage else None)
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    whole = {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
    seconds = FIRST_TOKEN_SECONDS + len(_pieces(_written(message))) * TOKEN_SECONDS
    return [(seconds, _encode(whole))]


def _dated(model: str) -> str:
    dates = (date for date, models in DATES.items() if model in models)
    return "-".join([model, *dates])


def _events(head: Json, message: Json, finish: str, usage: Json | None) -> Steps:
    """Yield the server-sent events of a streamed answer, one word at a time."""
    head = {**head, "object": "chat.completion.chunk", **({"usage": None} if usage else {})}

    def event(delta: Json, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return b"data: " + _encode({**head, "choices": [choice]}) + b"\n\n"

    start: Json = {"role": "assistant", "content": "", "refusal": None}
    for call in message.get("tool_calls", []):
        opened = {**call, "index": 0, "function": {**call["function"], "arguments": ""}}
        start |= {"content": None, "tool_calls": [opened]}
    yield FIRST_TOKEN_SECONDS, event(start)
    for piece in _pieces(_written(message)):
        part = {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
        yield TOKEN_SECONDS, event(part if message.get("tool_calls") else {"content": piece})
    yield 0.0, event({}, finish)
    if usage:
        yield 0.0, b"data: " + _encode({**head, "choices": [], "usage": usage}) + b"\n\n"
    yield 0.0, b"data: [DONE]\n\n"


def _written(message: Json) -> str:
    calls = message.get("tool_calls")
    return str(calls[0]["function"]["arguments"] if calls else message["content"])


def _pieces(text: str) -> list[str]:
    return re.findall(r"\S+\s*|\s+", text)


def _complete(body: Json, price: Price) -> tuple[Json, str, Json]:
    """Return the assistant's message, the reason why it ended, and the usage."""
    prompt = _read(body["messages"])
    message: Json = {"role": "assistant", "content": None, "refusal": None}
    if call := _call_tool(body, prompt):
        message["tool_calls"], finish = [call], "tool_calls"
        output = json.dumps(call["function"])
    else:
        shape = body.get("response_format") or {"type": "text"}
        text = _answer(prompt) if shape["type"] == "text" else _structured(shape, prompt)
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        output, finish = _shorten(text, limit, price.model)
        message["content"] = output
    # A model that reasons is billed for its thoughts: here, the sentences it compared.
    thoughts = "\n".join(prompt.facts) if "output_reasoning_tokens" in price.usd_per_million else ""
    return message, finish, _usage(body, price.model, output, thoughts)


def _shorten(text: str, limit: int | None, model: str) -> tuple[str, str]:
    """Cut a text after so many tokens, between words, and say why it ended."""
    if limit is None or count_tokens(text, model).tokens <= limit:
        return text, "stop"
    starts = itertools.accumulate(_pieces(text), initial="")
    fitting = itertools.takewhile(lambda s: count_tokens(s, model).tokens <= limit, starts)
    return list(fitting)[-1], "length"


def _usage(body: Json, model: str, output: str, thoughts: str) -> Json:
    """Count a call: the JSON of tools and schema is prompt too, thoughts are output."""
    extra = "".join(json.dumps(body[k]) for k in ("tools", "response_format") if body.get(k))
    prompt = count_message_tokens(body["messages"], model).tokens
    prompt += count_tokens(extra, model).tokens
    visible = count_tokens(output, model).tokens
    limit = body.get("max_completion_tokens") or math.inf  # it holds for thoughts, too
    reasoning = int(max(0, min(count_tokens(thoughts, model).tokens, limit - visible)))
    completion = visible + reasoning
    cached = _cached_tokens(extra, body["messages"], model) if prompt >= 1024 else 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": min(cached, prompt)},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


_seen: dict[str, set[int]] = {}
_seen_lock = threading.Lock()


def _cached_tokens(extra: str, messages: list[Json], model: str) -> int:
    """Return how long a beginning of this prompt was sent before, to this model, here.

    As OpenAI documents its cache: from 1,024 tokens on, in steps of 128.
    """
    text = extra + "".join(f"{m['role']}\n{m.get('content')}\n" for m in messages)
    blocks = (text[start : start + 32] for start in range(0, len(text), 32))
    keys = list(itertools.accumulate(blocks, lambda key, block: hash((key, block)), initial=0))[1:]
    with _seen_lock:
        seen = _seen.setdefault(model, set())
        known = sum(1 for _ in itertools.takewhile(seen.__contains__, keys))
        seen.update(keys)
    tokens = count_tokens(text[: known * 32], model).tokens
    return tokens // 128 * 128 if tokens >= 1024 else 0


def _check_chat(body: Json) -> None:
    messages = body.get("messages")
    _check(isinstance(messages, list) and messages, "`messages` must be a list that is not empty.")
    roles = ["system", "developer", "user", "assistant", "tool"]
    for message in body["messages"]:
        role, content = message.get("role"), message.get("content")
        _check(role in roles, f"`role` must be one of {', '.join(roles)}.")
        fits = isinstance(content, str | list) or (content is None and role == "assistant")
        _check(fits, "`content` must be a text or a list of parts.")
    for limit in (body.get("max_tokens"), body.get("max_completion_tokens")):
        _check(limit is None or (type(limit) is int and limit > 0), "`max_tokens` must be above 0.")
    _check(body.get("n") in (None, 1), "`n` must be 1: the offline model has one answer only.")


# --- Reading: what asks, what instructs, what tells --------------------------------------

EMPTY_WORDS = frozenset(
    re.findall(
        r"\w+",
        "am an and are as at be been but by can could did do does for from had has have how if in "
        "is it its me my no not of on or our please shall should so than that the their them there "
        "they this to was we were what when where which who why will with would you your",
    )
)
# How a sentence begins that tells the model what to do. It is never an answer.
INSTRUCTION = re.compile(
    r"(you are|you will|your (task|job|role|answer)|act as|answer|reply|respond|say|write|rewrite|"
    r"summari[sz]e|cite|quote|judge|rate|score|classify|decide|extract|translate|explain|think|"
    r"be (brief|concise|short|polite|friendly|helpful)|(only )?us(e|ing) only|only (use|answer)|"
    r"base your|keep (it|your)|(always|do not|don['’]t|never) (answer|reply|invent|guess|make up|"  # noqa: RUF001 (typed by people)
    r"mention|say|add|use))\b",
    re.IGNORECASE,
)
# What tells it to abstain: a condition, a negation, where it looks, and what to say.
ABSTAIN = re.compile(
    r"(?=.*\b(if|when|where|unless|otherwise)\b)(?=.*(\b(no|not|nothing|cannot|unless)\b|n.t\b))"
    r"(?=.*\b(passage|context|text|document|source|handbook|information|answer|find|found|cover|"
    r"contain|know))(?=.*\b(say|answer|reply|respond|write)\b)",
    re.IGNORECASE,
)
# What a line of the prompt may begin with, to say what it is.
SECTION = re.compile(
    r"^\W*(question|context|passages|sources|answer|response|output)\s*:",
    re.IGNORECASE | re.MULTILINE,
)
KEYWORDS = re.compile(r"\b(as|into|in) (search )?keywords\b", re.IGNORECASE)
QUOTED = re.compile(r"\"([^\"]+)\"|“([^”]+)”|(?<!\w)'(.+?)'(?!\w)")
LIMIT = re.compile(r"\b(one|two|three|four|five|\d+) (word|sentence)s?\b", re.IGNORECASE)
NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5}


@dataclass
class _Prompt:
    """The messages of a request, each sentence sorted by what it is."""

    question: str = ""
    instructions: list[str] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    text: str = ""


def _read(messages: list[Json]) -> _Prompt:
    """Sort a prompt: the last message of the user asks, all others instruct or tell.

    What a tool returned last tells alone.
    """
    prompt = _Prompt(text="\n".join(map(_text, messages)))
    asking = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
    results = [*itertools.takewhile(lambda m: m["role"] == "tool", reversed(messages))]
    for place, message in enumerate(messages):
        text = _text(message)
        if place == asking:
            prompt.question, text = _split_question(text)
        for sentence in _sentences(SECTION.sub("", text)):
            instructs = INSTRUCTION.match(sentence) or ABSTAIN.match(sentence)
            if instructs and message["role"] != "tool":
                prompt.instructions.append(sentence)
            elif not sentence.endswith(("?", ":")):  # a question, a heading
                prompt.facts.append(sentence)
    told = [sentence for message in reversed(results) for sentence in _sentences(_text(message))]
    if told:  # what was looked up is said, near or not
        prompt.facts = told
        prompt.instructions = [i for i in prompt.instructions if not ABSTAIN.match(i)]
    return prompt


def _text(message: Json) -> str:
    content = message.get("content") or ""
    if isinstance(content, list):
        content = "\n".join(str(part.get("text", "")) for part in content)
    return _plain(content) if message["role"] == "tool" else str(content)


def _plain(content: str) -> str:
    """Return JSON as lines of words: `'{"status": "shipped"}' -> "status: shipped"`."""
    try:
        value = json.loads(content)
    except ValueError:
        return content
    rows = value if isinstance(value, list) else [value]
    fields = [row.items() if isinstance(row, dict) else [("result", row)] for row in rows]
    return "\n".join(", ".join(f"{k.replace('_', ' ')}: {v}" for k, v in row) for row in fields)


def _split_question(text: str) -> tuple[str, str]:
    """Split off the line that asks: after "Question:", else with "?", else the last one."""
    lines = [line for line in text.splitlines() if line.strip()] or [""]
    marked = [line for line in lines if re.match(r"\W*question\s*:", line, re.IGNORECASE)]
    asking = [line for line in lines if line.rstrip().endswith("?")]
    question = (marked or asking or lines)[-1]
    lines.remove(question)
    return re.sub(r"^\W*question\s*:\s*", "", question, flags=re.IGNORECASE), "\n".join(lines)


def _sentences(text: str) -> Iterator[str]:
    """Yield the sentences of each line; what stands in quotes is not split."""
    for line in text.splitlines():
        sentence = ""
        for part in re.split(r"(?<=[.!?])\s+|(?<=[.!?][\"”'])\s+(?![a-z])", line.strip(" -*•\t")):
            sentence = f"{sentence} {part}".strip()
            if sentence.count('"') % 2 == 0 and sentence.count("“") == sentence.count("”"):
                yield from filter(None, [sentence])
                sentence = ""
        yield from filter(None, [sentence])


def _keywords(text: str) -> list[str]:
    """Return the words that carry meaning: `"How do I return shoes?" -> ["return", "shoes"]`."""
    found = (w for w in re.findall(r"[^\W_]+", text.lower()) if len(w) > 1)
    return [word for word in dict.fromkeys(found) if word not in EMPTY_WORDS]


def _words(text: str) -> set[str]:
    """Return the words that carry meaning, cut to a stem: `"My shoes" -> {"sho"}`."""
    stems = (re.sub(r"(?<=\w{2})(ing|ies|ed|es|s|e|y)$", "", w) for w in _keywords(text))
    return {re.sub(r"(\D)\1$", r"\1", stem) for stem in stems}  # shipped, shipp, ship


# --- Answering: the nearest sentences ----------------------------------------------------


def _nearest(question: str, facts: list[str], limit: int) -> tuple[list[str], float]:
    """Return the facts nearest to a question, and the share of it that the first covers.

    A word weighs more the fewer facts contain it. Another fact is added only where it
    covers much of what is still missing.
    """
    bags = [_words(fact) for fact in facts]
    weight = {
        word: math.log(1 + len(bags) / max(1, sum(word in bag for bag in bags)))
        for word in _words(question)
    }

    def share(words: set[str]) -> float:
        # fsum is exact: a sum must not depend on the order of a set
        return math.fsum(weight[word] for word in words) / (math.fsum(weight.values()) or 1)

    missing, picked = set(weight), dict[int, float]()
    while len(picked) < min(limit, len(bags)):
        best = max(range(len(bags)), key=lambda place: share(missing & bags[place]))
        if picked and share(missing & bags[best]) < WORTH_ADDING:
            break
        picked[best] = share(missing & bags[best])
        missing -= bags[best]
    return [facts[place] for place in sorted(picked)], next(iter(picked.values()), 0.0)


def _answer(prompt: _Prompt) -> str:
    """Say the nearest facts, or what the prompt wants to hear where they are not near."""
    told = " ".join([*prompt.instructions, prompt.question])
    if KEYWORDS.search(told):
        return " ".join(_keywords(prompt.question))
    limits = {unit.lower(): NUMBERS.get(n.lower()) or int(n) for n, unit in LIMIT.findall(told)}
    found, share = _nearest(prompt.question, prompt.facts, limits.get("sentence") or 2)
    abstain = next(filter(ABSTAIN.match, prompt.instructions), None)
    if abstain and share < ENOUGH:
        quoted = QUOTED.search(abstain)
        found = [next(filter(None, quoted.groups())) if quoted else "I do not know."]
    words = " ".join(found or [NOTHING_TO_READ]).split(" ")
    return " ".join(words[: limits.get("word")])


# --- Tools: a call whose arguments stand in the question ---------------------------------

FREE_TEXT = {"query", "question", "text", "message", "input", "search", "topic"}
AN_ID = r"\b[A-Za-z]+[-_]?\d[\w-]*|\b\d{3,}\b"
A_NAME = r"(?<=[\"“])[^\"”]+(?=[\"”])|(?<=[a-z,] )[A-Z][a-z]+(?: [A-Z][a-z]+)*"


def _call_tool(body: Json, prompt: _Prompt) -> Json | None:
    """Return a call of the tool nearest to the question, or None.

    The model chooses to call a tool that shares a word with the question where each
    required argument stands in the question. Where the request demands a call, it
    leaves out the arguments it cannot find.
    """
    choice = body.get("tool_choice") or "auto"
    functions = [tool["function"] for tool in body.get("tools") or []]
    if isinstance(choice, dict):
        wanted = choice["function"]["name"]
        functions = [function for function in functions if function["name"] == wanted]
        _check(functions, f"`tool_choice` names `{wanted}`, which is not in `tools`.")
    if choice == "none" or body["messages"][-1]["role"] != "user":
        return None

    def shared(function: Json) -> int:
        names = (function.get("parameters") or {}).get("properties") or {}
        about = " ".join([function["name"], function.get("description") or "", *names])
        return len(_words(about) & _words(prompt.question))

    for function in sorted(functions, key=shared, reverse=True):
        given, complete = _arguments(function.get("parameters") or {}, prompt.question)
        if choice != "auto" or (shared(function) and complete):
            called = {"name": function["name"], "arguments": json.dumps(given)}
            key = hashlib.sha256(_encode([body["messages"], called])).hexdigest()[:24]
            return {"id": f"call_{key}", "type": "function", "function": called}
    return None


def _arguments(schema: Json, question: str) -> tuple[Json, bool]:
    """Return the arguments found in the question, and whether none that is required is missing."""
    numbers = iter(re.findall(r"(?<![\w.-])\d+(?:\.\d+)?(?![\w-])", question))
    properties = schema.get("properties") or {}
    found = {name: _argument(name, part, question, numbers) for name, part in properties.items()}
    given = {name: value for name, value in found.items() if value is not None}
    return given, given.keys() >= set(schema.get("required") or [])


def _argument(name: str, schema: Json, question: str, numbers: Iterator[str]) -> Any:
    kind, asked = _kind(schema), _words(question)
    if "enum" in schema:
        return next((option for option in schema["enum"] if _words(str(option)) & asked), None)
    if kind in {"integer", "number"}:
        number = next(numbers, None)
        return number and (round if kind == "integer" else float)(float(number))
    if kind == "string" and name in FREE_TEXT:
        return question
    if kind == "string":
        is_id = re.search(r"(^|_)(id|number|code|sku)$", name)
        match = re.search(AN_ID if is_id else A_NAME, question)
        return match and match[0]
    return True if kind == "boolean" and _words(name) & asked else None


# --- Structured output: a JSON schema filled from the prompt -----------------------------

SIMILARITY = re.compile(r"relevan|faithful|ground|support|similar|correct|accura|confiden|quality")
GROUNDED = re.compile(r"faithful|ground|support")
TOXIC = re.compile(r"toxic|insult|offens")
INSULT = re.compile(r"\b(idiot|stupid|dumb|moron|fool|shut up)", re.IGNORECASE)
DEEPEST = 12


def _structured(shape: Json, prompt: _Prompt) -> str:
    if shape["type"] == "json_object":
        return json.dumps({"answer": _answer(prompt)}, ensure_ascii=False)
    _check(shape["type"] == "json_schema", "`response_format` must be text, or JSON.")
    schema = shape["json_schema"].get("schema") or {}
    _check(schema.get("type") == "object", "`json_schema.schema` must be of type object.")
    return json.dumps(_Form(schema, prompt).fill(schema), ensure_ascii=False)


@dataclass
class _Form:
    """Fills a JSON schema from a prompt.

    A text is the sentence nearest to its name and the question. A number or boolean
    whose name or description speaks of a similarity is one (relevance: how much of the
    question is in the answer; faithfulness: how much of the answer is in the context).
    One that speaks of toxicity looks for a few insults.
    Any other number is the first in the nearest sentence; any other boolean is false.
    """

    root: Json
    prompt: _Prompt

    def fill(self, schema: Json, label: str = "", depth: int = 0) -> Any:
        """Return a value for a schema; `label` says in words what it is for."""
        _check(depth < DEEPEST, "The JSON schema is nested too deeply for the offline model.")
        label = f"{label} {schema.get('description') or ''}".lower()
        schema = self._concrete(schema)
        if options := schema.get("enum") or [v for k, v in schema.items() if k == "const"]:
            near = _words(self._sentence(label))
            return max(options, key=lambda option: len(_words(str(option)) & near))
        match _kind(schema):
            case "object":
                inside = schema.get("properties") or {}
                value: Any = {key: self.fill(part, key, depth + 1) for key, part in inside.items()}
            case "array":
                value = [self.fill(schema["items"], label, depth + 1)]
            case "string":
                value = self._sentence(label)
            case "boolean":
                value = bool(SIMILARITY.search(label)) and self._similarity(label) >= 0.5
            case "number":
                value = round(self._number(schema, label), 2)
            case "integer":
                value = round(self._number(schema, label))
            case unknown:
                raise ApiError(400, f"The JSON schema has an unknown type: {unknown!r}.")
        return value

    def _concrete(self, schema: Json) -> Json:
        """Follow references, and the first choice that is not null, to a schema with a type."""
        for _ in range(DEEPEST):
            choices = schema.get("anyOf") or schema.get("allOf")
            if "$ref" in schema:
                keys = filter(None, schema["$ref"].removeprefix("#").split("/"))
                schema = functools.reduce(lambda found, key: found[key], keys, self.root)
            elif choices:
                schema = next((c for c in choices if c.get("type") != "null"), {"type": "null"})
            else:
                return schema
        raise ApiError(400, "The JSON schema refers to itself.")

    def _sentence(self, label: str) -> str:
        found, _ = _nearest(f"{label} {self.prompt.question}", self.prompt.facts, limit=1)
        return found[0] if found else NOTHING_TO_READ

    def _number(self, schema: Json, label: str) -> float:
        said = re.search(r"(\d+(?:\.\d+)?)\s*(?:to|and|-)\s*(\d+(?:\.\d+)?)", label)
        low, high = map(float, said.groups()) if said else (0.0, 1.0)
        low, high = schema.get("minimum", low), schema.get("maximum", high)
        if TOXIC.search(label):
            return float(high if INSULT.search(self.prompt.text) else low)
        if SIMILARITY.search(label):
            return float(low + self._similarity(label) * (high - low))
        number = re.search(r"\d+(?:\.\d+)?", self._sentence(label))
        value = float(number[0]) if number else 0.0
        bounded = said or "minimum" in schema or "maximum" in schema
        return float(low) if bounded and not low <= value <= high else value

    def _similarity(self, label: str) -> float:
        _, *parts = SECTION.split(self.prompt.text)
        section = {
            name.lower(): _words(text) for name, text in zip(parts[::2], parts[1::2], strict=True)
        }
        answer = next((section[n] for n in ("answer", "response", "output") if n in section), None)
        if answer is None:
            return _nearest(self.prompt.question, self.prompt.facts, limit=1)[1]
        sources = [section[n] for n in ("context", "passages", "sources") if n in section]
        if GROUNDED.search(label):
            return len(answer & set().union(*sources)) / (len(answer) or 1)
        asked = section.get("question") or _words(self.prompt.question)
        return len(answer & asked) / (len(asked) or 1)


def _kind(schema: Json) -> Any:
    kind = schema.get("type")
    return next((k for k in kind if k != "null"), "null") if isinstance(kind, list) else kind


# --- Embeddings: a bag of words, hashed --------------------------------------------------


def _embeddings(body: Json) -> Json:
    price = _price(body.get("model"), embeds=True)
    texts = [body["input"]] if isinstance(body.get("input"), str) else body.get("input")
    fits = isinstance(texts, list) and texts and all(t and isinstance(t, str) for t in texts)
    _check(fits, "`input` must be a text or a list of texts, none of them empty.")
    most = DIMENSIONS[price.model]
    size = most if body.get("dimensions") is None else body["dimensions"]
    _check(type(size) is int and 0 < size <= most, f"`dimensions` must be from 1 to {most}.")
    rows: list[Json] = []
    for index, text in enumerate(texts or []):
        vector: Any = _embed(text, size)
        if body.get("encoding_format") == "base64":
            vector = base64.b64encode(struct.pack(f"<{size}f", *vector)).decode()
        rows.append({"object": "embedding", "index": index, "embedding": vector})
    tokens = sum(count_tokens(text, price.model).tokens for text in texts or [])
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": rows, "model": body["model"], "usage": usage}


def _embed(text: str, size: int) -> list[float]:
    """Return a vector of length 1. Each word adds to one place, so shared words are near."""
    vector = [0.0] * size
    for word in _words(text) or {text}:
        digest = hashlib.sha256(word.encode("utf-8", "replace")).digest()
        vector[int.from_bytes(digest[:8]) % size] += 1
    length = math.hypot(*vector)
    return [value / length for value in vector]
