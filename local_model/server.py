"""The routes, the errors and the pace. Requests are handled on the event loop alone."""

import asyncio
import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Iterable
from itertools import chain
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from local_langfuse import HOST, serving
from local_langfuse.guard import Loopback, read_body
from local_langfuse.wire import Refused
from local_model import MARKER, LocalModel, tokens
from local_model.answer import pieces, respond
from local_model.catalog import Clock, Model, available, find, today
from local_model.chat import chunks, completion, read_chat
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
MOST_PARTS = 500_000  # braces, brackets and commas: reading more would hold up everybody else


class Api:
    """The endpoints of one server, which has a prompt cache of its own."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._cache = PromptCache()

    def routes(self) -> list[Route]:
        """Return the table of contents."""
        return [
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/responses", self.responses, methods=["POST"]),
            Route("/v1/responses/{id:path}", self.stored, methods=["GET", "POST", "DELETE"]),
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/v1/models/{id:path}", self.model),
        ]

    async def chat(self, request: Request) -> Response:
        """Answer a chat completion."""
        body, digest = await _read(request)
        ask = read_chat(body, digest, self._clock)
        answer = await self._answer(ask)
        if not body.get("stream"):
            await _whole(answer)
            return _json(completion(ask, answer), ask)
        options = body.get("stream_options") or {}
        parts = chunks(ask, answer, with_usage=bool(options.get("include_usage")))
        lines = ((word, f"data: {_dump(part)}\n\n") for word, part in parts)
        return _stream(chain(lines, [(False, "data: [DONE]\n\n")]), ask)

    async def responses(self, request: Request) -> Response:
        """Answer a response."""
        body, digest = await _read(request)
        ask = read_response(body, digest, self._clock)
        answer = await self._answer(ask)
        if not body.get("stream"):
            await _whole(answer)
            return _json(response(ask, answer, body), ask)
        parts = events(ask, answer, body)
        return _stream(
            ((word, f"event: {part['type']}\ndata: {_dump(part)}\n\n") for word, part in parts), ask
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
        return _json({"object": "list", "data": rows})

    async def model(self, request: Request) -> Response:
        """Tell about one model."""
        name = request.path_params["id"]
        return _json(_model(name, find(name, self._clock)))

    async def _answer(self, ask: Ask) -> Answer:
        await tokens.loaded(ask.model.name)
        return respond(ask, self._cache)


def _model(name: str, model: Model) -> Json:
    day = model.shutdown and model.shutdown.isoformat()
    row = {"id": name, "object": "model", "created": model.created, "owned_by": "openai"}
    return {**row, "shutdown_date": day}


async def _read(request: Request) -> tuple[Json, str]:
    """Return the body of a request, and a digest of it."""
    raw = await read_body(request)
    if sum(raw.count(mark) for mark in (b"{", b"[", b",")) > MOST_PARTS:
        raise ApiError("The body has too many parts for the local model.", status=413)
    try:
        body = json.loads(raw)
        # Fails for what could not be sent back: half a character, a number that is none.
        same = json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise ApiError(f"We could not parse the JSON body of your request: {why}") from None
    if not isinstance(body, dict):
        raise ApiError("The JSON body of a request must be an object.")
    return body, hashlib.sha256(same).hexdigest()


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _json(value: Json, ask: Ask | None = None, status: int = 200) -> Response:
    return Response(_dump(value), status, _seen(ask), media_type="application/json")


def _seen(ask: Ask | None) -> dict[str, str]:
    return {f"{MARKER}-did-not-look-at": ask.unseen} if ask and ask.unseen else {}


async def _whole(answer: Answer) -> None:
    """Take the time that an answer would take."""
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


def _refusal(status: int, message: str) -> Response:
    return _json(ApiError(message, status=status).body(), status=status)


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)  # noqa: S101  the table below says so
    return _json(error.body(), status=error.status)


async def _refused(_: Request, error: Exception) -> Response:
    return _refusal(error.status if isinstance(error, Refused) else 400, str(error))


async def _left(_: Request, __: Exception) -> Response:
    return _refusal(400, "The client went away.")


async def _too_deep(_: Request, __: Exception) -> Response:
    return _refusal(400, "The request is nested too deeply.")


async def _no_route(request: Request, error: Exception) -> Response:
    where, method = request.url.path, request.method
    if isinstance(error, HTTPException) and error.status_code == 405:
        told = ApiError(f"Not allowed to {method} on {where}.", None, "method_not_supported", 405)
        return _json(told.body(), status=405)
    return _refusal(404, f"Invalid URL ({method} {where})")


async def _failed(_: Request, error: Exception) -> Response:
    return _refusal(500, f"The local model failed: {error!r}")


class Marked:
    """Puts the mark of the local model, and an id of the request, on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the application does, with two headers more."""

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[MARKER] = "true"
                headers["x-request-id"] = f"req_{secrets.token_hex(16)}"
            await send(message)

        await self._app(scope, receive, marked)


class Keyed:
    """Lets through who brings a key, any key: OpenAI's client always sends one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401 where no key came; hand on the others."""
        given = dict(scope["headers"]).get(b"authorization", b"").lower()
        app: Any = self._app
        if not (given.startswith(b"bearer ") and given[7:].strip()):
            told = (
                "You didn't provide an API key. Any key will do here, as `Authorization: Bearer`."
            )
            app = _refusal(401, told)
        await app(scope, receive, send)


def application(clock: Clock = today) -> ASGIApp:
    """Return the server as an ASGI application; `clock` tells the date of today."""
    app = Starlette(
        routes=Api(clock).routes(),
        middleware=[Middleware(Loopback, _refusal), Middleware(Keyed)],
        exception_handlers={
            ApiError: _api_error,
            Refused: _refused,
            ClientDisconnect: _left,
            RecursionError: _too_deep,
            HTTPException: _no_route,
            Exception: _failed,
        },
    )
    app.router.redirect_slashes = False
    return Marked(app)


def serve(port: int) -> LocalModel:
    """Start the server in a daemon thread of this process."""
    listening = serving.listen(port, "--port")
    tokens.start_loading()
    stop = serving.serve(application(), listening, "local_model")
    return LocalModel(f"http://{HOST}:{listening.getsockname()[1]}/v1", stop)
