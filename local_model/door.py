"""What all requests and answers share: the key, the header that marks us, OpenAI's errors."""

import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from local_langfuse.wire import Refused
from local_model import MARKER
from local_model.shape import ApiError


def dump(value: object) -> str:
    """Return a value as JSON; everything in it was checked on its way in."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def answer_json(
    value: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a JSON answer."""
    return Response(dump(value), status, headers, media_type="application/json")


def refusal(status: int, message: str) -> Response:
    """Return an error in OpenAI's format."""
    return answer_json(ApiError(message, status=status).body(), status)


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)  # noqa: S101  as the table below says
    return answer_json(error.body(), error.status)


async def _refused(_: Request, error: Exception) -> Response:
    return refusal(error.status if isinstance(error, Refused) else 400, str(error))


async def _left(_: Request, __: Exception) -> Response:
    return refusal(400, "The client disconnected.")


async def _too_deep(_: Request, __: Exception) -> Response:
    return refusal(400, "The request is nested too deeply.")


async def _no_route(request: Request, error: Exception) -> Response:
    where, method = request.url.path, request.method
    if isinstance(error, HTTPException) and error.status_code == 405:
        told = ApiError(f"Not allowed to {method} on {where}.", None, "method_not_supported", 405)
        return answer_json(told.body(), 405)
    return refusal(404, f"Invalid URL ({method} {where})")


async def _failed(_: Request, error: Exception) -> Response:
    return refusal(500, f"The local model failed: {error!r}")


class Marked:
    """Adds two headers to every answer: the local model's mark, and an id of the request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the application does, with two more headers."""

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[MARKER] = "true"
                headers["x-request-id"] = f"req_{secrets.token_hex(16)}"
            await send(message)

        await self._app(scope, receive, marked)


class Keyed:
    """Lets through requests with a key, any key: OpenAI's client always sends one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401 if there is no key; hand on the others."""
        given = dict(scope["headers"]).get(b"authorization", b"").lower()
        app: Any = self._app
        if not (given.startswith(b"bearer ") and given[7:].strip()):
            told = (
                "You didn't provide an API key. Any key will do here, as `Authorization: Bearer`."
            )
            app = refusal(401, told)
        await app(scope, receive, send)


HANDLERS: dict[Any, Callable[[Request, Exception], Awaitable[Response]]] = {
    ApiError: _api_error,
    Refused: _refused,
    ClientDisconnect: _left,
    RecursionError: _too_deep,
    HTTPException: _no_route,
    Exception: _failed,
}
