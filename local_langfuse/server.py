"""The routes. Requests, SQLite included, are handled only on the event loop: see `serving`."""

import secrets
import sqlite3
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from local_langfuse import (
    HOST,
    LASTS,
    MARKER,
    PROJECT,
    CannotStart,
    LocalLangfuse,
    datasets,
    deletions,
    experiments,
    metrics,
    models,
    prompts,
    read,
    serving,
)
from local_langfuse.guard import (
    HEALTH,
    Guard,
    Json,
    cookie_name,
    media_type,
    read_body,
    read_json,
)
from local_langfuse.otlp import read_spans
from local_langfuse.scores import score_row
from local_langfuse.store import Row, Store
from local_langfuse.wire import Query, Refused, check

VERSION = "4.59.0"  # the oldest Langfuse that SDK 5 works with
WHAT = "the local stand-in for Langfuse, for one person on one machine"
THE_PROJECT = {
    "id": PROJECT,  # the SDK builds links from it
    "name": "local_langfuse",
    "organization": {"id": "local", "name": "This machine"},
    "metadata": {"about": WHAT},
}
NOT_HERE = (
    f"This is {WHAT}. It does not have {{}}. It has {{}}. For the rest, set the keys of a real "
    "Langfuse."
)
API = "/api/public"
# The page: only these files, read once. From the address, app.js decides which view to show.
PAGE = Path(__file__).parent / "page"
INDEX = "index.html"
SCRIPTS = ("api", "app", "base", "chart", "dashboard", "library", "people", "trace", "traces")
FILES = {
    INDEX: "text/html",
    "style.css": "text/css",
    **{f"{name}.js": "text/javascript" for name in SCRIPTS},
}
VIEWS = ("traces", "sessions", "users", "dashboard", "prompts", "datasets", "experiments")
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " connect-src 'self'; img-src 'self' data:; base-uri 'none'; frame-ancestors 'none';"
    " form-action 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}

Endpoint = Callable[[Request], Awaitable[Response]]


class Api:
    """The endpoints. Each reads its request, asks the store, and answers with JSON."""

    def __init__(self, store: Store, session: str, file: Path, *, lasts: bool) -> None:
        self._store = store
        self._about = {"about": WHAT, MARKER: str(file.resolve()), LASTS: lasts}
        self._session = session
        self._files = {name: (PAGE / name).read_bytes() for name in FILES}

    def routes(self) -> list[Route]:
        """Return all routes, in order."""
        get, put = self._route, partial(self._route, has_body=True)
        return [
            Route(HEALTH, _fixed({"status": "OK", "version": VERSION, **self._about})),
            Route(f"{API}/projects", _fixed({"data": [THE_PROJECT]})),
            Route(f"{API}/otel/v1/traces", self.add_spans, methods=["POST"]),
            get("GET v2/observations", read.observations),
            get("GET v2/metrics", metrics.metrics),
            Route(f"{API}/scores", self.add_scores, methods=["POST"]),
            get("GET v3/scores", read.scores),
            get("DELETE scores/{id:path}", deletions.delete_score, 202),
            put("DELETE traces", deletions.delete_traces),
            get("DELETE traces/{id:path}", deletions.delete_trace),
            get("GET v2/prompts", prompts.prompts),
            put("POST v2/prompts", prompts.create, 201),
            put("PATCH v2/prompts/{name:path}/versions/{version}", prompts.set_labels),
            get("GET v2/prompts/{name:path}", prompts.get),
            get("DELETE v2/prompts/{name:path}", prompts.delete, 204),
            get("GET v2/datasets", datasets.datasets),
            put("POST v2/datasets", datasets.create_dataset),
            get("GET v2/datasets/{name:path}", datasets.dataset),
            get("GET dataset-items", datasets.items),
            put("POST dataset-items", datasets.put_item),
            get("GET dataset-items/{id:path}", datasets.item),
            get("DELETE dataset-items/{id:path}", datasets.delete_item),
            get("GET experiments", experiments.experiments),
            get("GET experiment-items", experiments.items),
            get("GET models", models.page_of_models),
            put("POST models", models.add_model),
            get("DELETE models/{id}", models.delete_model, 204),
            Route("/", self.page),
            *(
                Route(f"/{view}{rest}", self.page)
                for view in VIEWS
                for rest in ("", "/{rest:path}")
            ),
            Route(f"/project/{PROJECT}", self.page),
            Route(f"/project/{PROJECT}/{{rest:path}}", self.page),
            *(Route(f"/page/{name}", self._file(name)) for name in FILES if name != INDEX),
        ]

    def _route(
        self, line: str, function: Callable[..., Any], status: int = 200, *, has_body: bool = False
    ) -> Route:
        """Answer with `function(store, *parts of the path, query or body)`."""
        method, path = line.split()

        async def endpoint(request: Request) -> Response:
            asked = check(await read_json(request)) if has_body else Query(request.query_params)
            answer = function(self._store, *request.path_params.values(), asked)
            return Response(status_code=status) if answer is None else Json(answer, status)

        return Route(f"{API}/{path}", endpoint, methods=[method])

    async def add_spans(self, request: Request) -> Response:
        """Store a batch of spans, then answer."""
        kind = media_type(request)
        if kind not in ("application/x-protobuf", "application/json"):
            raise Refused("Content-Type must be application/x-protobuf or application/json", 415)
        body, tariffs = await read_body(request), models.Tariffs(self._store)
        rows, reasons = read_spans(body, tariffs, is_json=kind == "application/json")
        self._store.put_observations(rows)
        if not reasons:
            return Json({})
        reason = "; ".join(dict.fromkeys(reasons))[:1000]
        return Json({"partialSuccess": {"rejectedSpans": len(reasons), "errorMessage": reason}})

    async def add_scores(self, request: Request) -> Response:
        """Store one score, or the valid ones of a list."""
        body = await read_json(request)
        if not isinstance(body, list):
            row = score_row(body)
            self._store.put_scores([row])
            return Json({"id": row["id"]})
        rows, errors = _sorted_out(body)
        self._store.put_scores(rows)
        if not errors:
            return Json({"message": "Accepted"}, 202)
        return Json({"accepted": len(rows), "rejected": len(errors), "errors": errors}, 207)

    async def page(self, request: Request) -> Response:
        """Answer with the page, the same for every view, and sign it in to read the API."""
        answer = Response(self._files[INDEX], 200, PAGE_HEADERS, FILES[INDEX])
        name = cookie_name(request.headers["host"])
        answer.set_cookie(name, self._session, path=API, httponly=True, samesite="strict")
        return answer

    def _file(self, name: str) -> Endpoint:
        async def endpoint(_: Request) -> Response:
            return Response(self._files[name], 200, PAGE_HEADERS, FILES[name])

        return endpoint


def _fixed(content: Row) -> Endpoint:
    async def endpoint(_: Request) -> Response:
        return Json(content)

    return endpoint


def _sorted_out(items: list[Any]) -> tuple[list[Row], list[Row]]:
    rows, errors = [], []
    for index, item in enumerate(items):
        try:
            rows.append(score_row(item))
        except Refused as error:
            errors.append({"message": str(error), "index": index})
    return rows, errors


async def _refused(_: Request, error: Exception) -> Response:
    return Json({"message": str(error), "error": str(error)}, getattr(error, "status", 400))


async def _no_route(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 400
    asked = f"{request.method} {request.url.path}"
    routes = [getattr(route, "path_format", "") for route in request.app.routes]
    has = ", ".join(dict.fromkeys(p.removeprefix(f"{API}/") for p in routes if API in p))
    message = NOT_HERE.format(asked, has) if status == 404 else "Method not allowed"
    allowed = error.headers if isinstance(error, HTTPException) else None
    return Json({"message": message}, status, allowed)


async def _database_failed(_: Request, error: Exception) -> Response:
    # It was busy for seconds, or the disk is full: nothing in the request was stored.
    return Json({"message": f"The database did not answer: {error}. Nothing was stored."}, 503)


Handler = Callable[[Request, Exception], Awaitable[Response]]


def application(store: Store, file: Path, *, lasts: bool = True) -> Starlette:
    """Return the ASGI application for the store in this file."""
    handlers: dict[Any, Handler] = {
        Refused: _refused,
        HTTPException: _no_route,
        sqlite3.OperationalError: _database_failed,
    }
    session = secrets.token_urlsafe()
    app = Starlette(
        routes=Api(store, session, file, lasts=lasts).routes(),
        middleware=[Middleware(Guard, session)],
        exception_handlers=handlers,
    )
    app.router.redirect_slashes = False
    return app


def serve(db: Path, port: int, *, lasts: bool = True) -> LocalLangfuse:
    """Serve the file in a daemon thread; see `local_langfuse.start`."""
    listening = serving.listen(port, "--port or LOCAL_LANGFUSE_PORT")
    try:
        store = Store(db)
    except CannotStart:
        listening.close()
        raise
    (stored,) = store.rows("SELECT count(*) FROM observations")[0]
    stop_serving = serving.serve(application(store, db, lasts=lasts), listening, "local_langfuse")

    def stop() -> None:
        stop_serving()
        store.close()

    return LocalLangfuse(f"http://{HOST}:{listening.getsockname()[1]}", stop, stored)
