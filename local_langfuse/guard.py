"""The checks before a request reaches a route: who is asking, and how much is sent."""

import base64
import hmac
import json
import re
import zlib
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request, cookie_parser
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from local_langfuse import HOST, PUBLIC_KEY, SECRET_KEY
from local_langfuse.wire import Refused, parse

MAX_BODY_BYTES = 64 * 1024 * 1024
LOOPBACK = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
HEALTH = "/api/public/health"


class Json(Response):
    """A JSON answer. Everything in it was checked on its way in."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the bytes of the answer."""
        return json.dumps(content, ensure_ascii=False, allow_nan=False).encode()


class Loopback:
    """Lets requests from this machine through, but not those of another site's page.

    A refused request is answered with `refusal(status, message)`.
    """

    def __init__(self, app: ASGIApp, refusal: Callable[[int, str], Response]) -> None:
        self._app = app
        self._answer = refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request that may not pass; hand on the others."""
        refusal = self.refusal(Headers(scope=scope), scope["path"], scope["method"])
        await (refusal or self._app)(scope, receive, send)

    def refusal(self, headers: Headers, path: str, method: str) -> Response | None:  # noqa: ARG002
        """Return the answer to a request that may not pass, or None if it may."""
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not LOOPBACK.fullmatch(hosts[0]):
            # With a host name of its own that leads here, a web page could pass the check below.
            return self._answer(421, f"Use {HOST} or localhost as the host in the address.")
        if any(origin != f"http://{hosts[0]}" for origin in headers.getlist("origin")):
            return self._answer(403, "Web pages from other origins may not use this server.")
        return None


class Guard(Loopback):
    """Does the same, and lets requests to the API through only with our keys.

    Our own page reads the API without keys: it sends the `session` of this process.
    """

    def __init__(self, app: ASGIApp, session: str) -> None:
        super().__init__(app, lambda status, message: Json({"message": message}, status))
        self._session = session

    def refusal(self, headers: Headers, path: str, method: str) -> Response | None:
        """Return the answer to a request that may not pass, or None if it may."""
        if refusal := super().refusal(headers, path, method):
            return refusal
        if path.startswith("/api/") and path != HEALTH:
            authorization = headers.get("authorization")
            if authorization is None and method == "GET" and self._is_our_page(headers):
                return None
            return _unauthorized(authorization)
        return None

    def _is_our_page(self, headers: Headers) -> bool:
        # A cookie goes to every port of a host, and a page on another port counts as the
        # same site. The browser's `sec-fetch-site` header tells them apart.
        if headers.get("sec-fetch-site") != "same-origin":
            return False
        given = cookie_parser(headers.get("cookie", "")).get(cookie_name(headers["host"]), "")
        return hmac.compare_digest(given.encode(), self._session.encode())


def cookie_name(host: str) -> str:
    """Return the name of the cookie: each port has its own, or two instances would fight."""
    return f"local_langfuse_{host.rpartition(':')[2]}" if ":" in host else "local_langfuse"


def _unauthorized(authorization: str | None) -> Response | None:
    if authorization is None:
        return Json({"message": "No authorization header"}, 401)
    expected = base64.b64encode(f"{PUBLIC_KEY}:{SECRET_KEY}".encode())
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() == "basic" and hmac.compare_digest(given.strip().encode(), expected):
        return None
    message = f"Invalid credentials. The local stand-in's keys are {PUBLIC_KEY} and {SECRET_KEY}."
    return Json({"message": message}, 401)


async def read_body(request: Request) -> bytes:
    """Return the body of a request, unpacked; raise `Refused` with 413 if it is too large."""
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > 2 * MAX_BODY_BYTES:
            break
        # Too large, but read on for a while without keeping it: a client that is still
        # sending would not see the answer.
        if size <= MAX_BODY_BYTES:
            chunks.append(chunk)
    if size > MAX_BODY_BYTES:
        raise _too_large()
    encoding = request.headers.get("content-encoding", "identity").lower()
    return b"".join(chunks) if encoding == "identity" else _unpacked(b"".join(chunks), encoding)


def _unpacked(packed: bytes, encoding: str) -> bytes:
    if encoding not in ("gzip", "deflate"):
        raise Refused("Content-Encoding must be gzip, deflate or identity", 415)
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS + 32)  # + 32: accepts either header
    try:
        # Unpack at most one byte more than allowed, however large the content is.
        unpacked = unpacker.decompress(packed, MAX_BODY_BYTES + 1)
    except zlib.error as error:
        raise Refused(f"the body is not valid {encoding}: {error}") from None
    if len(unpacked) > MAX_BODY_BYTES:
        raise _too_large()
    if not unpacker.eof or unpacker.unused_data:
        raise Refused(f"the body is not valid {encoding}: it is cut off, or data follows it")
    return unpacked


def _too_large() -> Refused:
    return Refused(f"the body is larger than {MAX_BODY_BYTES // 1024**2} MiB", 413)


async def read_json(request: Request) -> Any:
    """Return the JSON value of a request's body."""
    if media_type(request) not in ("application/json", ""):
        raise Refused("Content-Type must be application/json", 415)
    return parse(await read_body(request))


def media_type(request: Request) -> str:
    """Return the media type of a request's body."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
