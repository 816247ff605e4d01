"""The routes and the pace. Requests are handled only on the event loop."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterable
from itertools import chain

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from local_langfuse import HOST, serving
from local_langfuse.guard import Loopback, read_body
from local_model import MARKER, LocalModel, tokens
from local_model.answer import pieces, respond
from local_model.catalog import Clock, Model, available, find, today
from local_model.chat import chunks, completion, read_chat
from local_model.door import HANDLERS, Keyed, Marked, answer_json, dump, refusal
from local_model.embeddings import embeddings
from local_model.exchange import Answer, Ask
from local_model.responses import events, response
from local_model.responses_input import read_response
from local_model.responses_shape import NOTHING_STORED
from local_model.shape import ApiError, Json
from local_model.usage import PromptCache

FIRST_TOKEN_SECONDS = 0.010
TOKEN_SECONDS = 0.001  # taken for each word
EMBEDDING_SECONDS = 0.002
# Limits for a body. Reading more would hold up everybody else.
MOST_BYTES = 20 * 1024 * 1024
MOST_PARTS = 100_000  # braces, brackets and commas


class Api:
    """The endpoints of one server, which has its own prompt cache."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._cache = PromptCache()

    def routes(self) -> list[Route]:
        """Return all routes, in order."""
        return [
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/responses", self.responses, methods=["POST"]),
            Route("/v1/responses/{id:path}", self.stored, methods=["GET", "POST", "DELETE"]),
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/v1/models/{id:path}", self.model),
        ]

    async def chat(self, request: Request) -> Response:
        """Answer with a chat completion."""
        body, digest = await _read(request)
        ask = read_chat(body, digest, self._clock)
        answer = await self._answer(ask)
        if not body.get("stream"):
            await _whole(answer)
            return answer_json(completion(ask, answer), headers=_seen(ask))
        options = body.get("stream_options") or {}
        parts = chunks(ask, answer, with_usage=bool(options.get("include_usage")))
        lines = ((word, f"data: {dump(part)}\n\n") for word, part in parts)
        return _stream(chain(lines, [(False, "data: [DONE]\n\n")]), ask)

    async def responses(self, request: Request) -> Response:
        """Answer with a response."""
        body, digest = await _read(request)
        ask = read_response(body, digest, self._clock)
        answer = await self._answer(ask)
        if not body.get("stream"):
            await _whole(answer)
            return answer_json(response(ask, answer, body), headers=_seen(ask))
        parts = events(ask, answer, body)
        return _stream(
            ((word, f"event: {part['type']}\ndata: {dump(part)}\n\n") for word, part in parts), ask
        )

    async def stored(self, request: Request) -> Response:
        """Say that no response was stored."""
        name = request.path_params["id"][:100]
        raise ApiError(f"Response with id '{name}' not found: {NOTHING_STORED}", status=404)

    async def embeddings(self, request: Request) -> Response:
        """Answer with a vector for each text."""
        body, _ = await _read(request)
        answer = await embeddings(body, self._clock)
        await asyncio.sleep(EMBEDDING_SECONDS)
        return Response(answer, media_type="application/json")

    async def models(self, _: Request) -> Response:
        """List the models that are not shut down."""
        rows = [_model(name, model) for name, model in available(self._clock).items()]
        return answer_json({"object": "list", "data": rows})

    async def model(self, request: Request) -> Response:
        """Describe one model."""
        name = request.path_params["id"]
        return answer_json(_model(name, find(name, self._clock)))

    async def _answer(self, ask: Ask) -> Answer:
        await tokens.loaded(ask.model.name)
        return respond(ask, self._cache)


def _model(name: str, model: Model) -> Json:
    day = model.shutdown and model.shutdown.isoformat()
    row = {"id": name, "object": "model", "created": model.created, "owned_by": "openai"}
    return {**row, "shutdown_date": day}


async def _read(request: Request) -> tuple[Json, str]:
    """Return the body of a request, and its digest, which is the same with or without `stream`."""
    raw = await read_body(request)
    if len(raw) > MOST_BYTES:
        told = f"The body is larger than {MOST_BYTES // 1024**2} MiB, the limit of the local model."
        raise ApiError(told, status=413)
    if sum(raw.count(mark) for mark in (b"{", b"[", b",")) > MOST_PARTS:
        raise ApiError("The body has too many parts for the local model.", status=413)
    try:
        body = json.loads(raw)
        if not isinstance(body, dict):
            raise ApiError("The JSON body of a request must be an object.")
        # Fails for what could not be sent back: half a character, or a NaN.
        dump(body).encode()
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise ApiError(f"We could not parse the JSON body of your request: {why}") from None
    same = {key: body[key] for key in body if not key.startswith("stream")}
    return body, hashlib.sha256(dump(same).encode()).hexdigest()


def _seen(ask: Ask) -> dict[str, str]:
    return {f"{MARKER}-did-not-look-at": ask.unseen} if ask.unseen else {}


async def _whole(answer: Answer) -> None:
    """Take as long as a real answer would."""
    words = pieces(" ".join([answer.text, *(call.arguments for call in answer.calls)]))
    await asyncio.sleep(FIRST_TOKEN_SECONDS + len(words) * TOKEN_SECONDS)


def _stream(parts: Iterable[tuple[bool, str]], ask: Ask) -> Response:
    async def paced() -> AsyncIterator[str]:
        await asyncio.sleep(FIRST_TOKEN_SECONDS)
        for is_word, part in parts:
            if is_word:
                await asyncio.sleep(TOKEN_SECONDS)
            yield part

    return StreamingResponse(paced(), headers=_seen(ask), media_type="text/event-stream")


def application(clock: Clock = today) -> ASGIApp:
    """Return the server as an ASGI application; `clock` returns today's date."""
    app = Starlette(
        routes=Api(clock).routes(),
        middleware=[Middleware(Loopback, refusal), Middleware(Keyed)],
        exception_handlers=HANDLERS,
    )
    app.router.redirect_slashes = False
    return Marked(app)


def serve(port: int) -> LocalModel:
    """Start the server in a daemon thread of this process."""
    listening = serving.listen(port, "--port")
    tokens.start_loading()
    stop = serving.serve(application(), listening, "local_model")
    return LocalModel(f"http://{HOST}:{listening.getsockname()[1]}/v1", stop)
