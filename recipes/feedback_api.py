"""Let users rate the answers they got.

A thumb under an answer is worth most where the answer can be looked up: what was asked,
what the model read, what it cost. So the answer goes out with the id of its trace, and the
rating comes back with it, often minutes later and sometimes twice.

Run it:

    python -m recipes.feedback_api --port 8000

and in another terminal, with the trace id of the first answer in the second line:

    curl --json '{"question": "How long is the warranty?"}' 127.0.0.1:8000/ask
    curl --json '{"trace_id": "…", "rating": 4, "comment": "clear"}' 127.0.0.1:8000/feedback

The trace has this shape:

    answer-question          chain
      write-answer           generation

Try next: rate the same answer again with `"thumbs": "down"` in place of the rating, and look
at the scores of its trace: there are still two.
"""

import argparse
import json
import logging
import signal
import socket
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Literal, Self

import httpx
import openai
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from langfuse import get_client, observe
from langfuse.api import CreateScoreBatchResults, CreateScoreRequest, ScoreDataType
from langfuse.api.core import ApiError
from langfuse.openai import OpenAI
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from pydantic import BaseModel, ConfigDict, Field, model_validator

from common.client import connect, tracing_is_on
from common.console import fail, show_line
from common.llm import model_name, openai_client
from common.readback import NotStoredError, trace_link
from common.retriever import search
from common.settings import read_settings

MAX_QUESTION, MAX_COMMENT = 500, 1_000  # characters
KEPT = 10_000  # answers that can be rated before Langfuse shows their traces


# %% 1. Start and end with the server
#
# Traces are sent in the background, so when the server is told to end, the last ones still
# wait. Ratings never do: section 4 stores them before it answers.


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the model's client before the first request; after the last one, send what waits."""
    app.state.answered = OrderedDict[str, datetime]()
    with openai_client() as app.state.client:
        yield
    get_client().flush()


APP = FastAPI(title="Ask the shop, and rate the answer", lifespan=lifespan)
# A page in the browser could give this machine another name, and ask under that.
APP.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])


# %% 2. Answer, and hand out the trace id
#
# The endpoints are plain functions: FastAPI runs each call in a thread, and a slow model
# holds up nobody else. What was just answered can be rated at once, though Langfuse Cloud
# shows a trace only after some seconds: this process remembers it.


class Question(BaseModel):
    """What `POST /ask` takes."""

    model_config = ConfigDict(extra="forbid", strict=True)
    question: str = Field(min_length=1, max_length=MAX_QUESTION)


class Answer(BaseModel):
    """What `POST /ask` returns; the id is null for a trace that is not stored."""

    answer: str
    trace_id: str | None


@observe(name="answer-question", as_type="chain", capture_input=False, capture_output=False)
def answer_question(client: OpenAI, question: str) -> tuple[str, datetime | None]:
    """Return the answer, and the second in which its trace began, None for one not recorded.

    In Langfuse: select the root `answer-question`. Beside the question and the answer you
    read what the user thought of it.
    """
    get_client().update_current_span(input=question)
    passages = "\n".join(passage.text for passage in search(question))
    response = client.chat.completions.create(
        name="write-answer",
        model=model_name(),
        messages=[
            {"role": "system", "content": f"Answer in one sentence, only from:\n{passages}"},
            {"role": "user", "content": question},
        ],
    )
    answer = response.choices[0].message.content or ""
    get_client().update_current_span(output=answer)
    span = trace.get_current_span()
    nanoseconds = isinstance(span, ReadableSpan) and span.start_time
    return answer, datetime.fromtimestamp(nanoseconds // 10**9, UTC) if nanoseconds else None


@APP.post("/ask")
def ask(body: Question, request: Request) -> Answer:
    """Answer a question; 502 where the model cannot."""
    trace_id = get_client().create_trace_id()
    try:
        answer, began = answer_question(
            request.app.state.client, body.question, langfuse_trace_id=trace_id
        )
    except openai.OpenAIError as error:
        raise HTTPException(502, "The model cannot answer at the moment.") from error
    if began is None:
        return Answer(answer=answer, trace_id=None)
    answered: OrderedDict[str, datetime] = request.app.state.answered
    answered[trace_id] = began
    while len(answered) > KEPT:
        answered.popitem(last=False)
    return Answer(answer=answer, trace_id=trace_id)


# %% 3. Refuse what is not an opinion
#
# What arrives here comes from a browser, and is stored for people to read: only the fields
# of the form, each with its type and a limit. A comment is text and is never interpreted.


class Feedback(BaseModel):
    """What `POST /feedback` takes: stars or a thumb, and a comment if there is one."""

    model_config = ConfigDict(extra="forbid", strict=True)
    trace_id: str = Field(pattern="^[0-9a-f]{32}$")
    rating: int | None = Field(default=None, ge=1, le=5)
    thumbs: Literal["up", "down"] | None = None
    comment: str = Field(default="", max_length=MAX_COMMENT)

    @model_validator(mode="after")
    def take_one(self) -> Self:
        """Refuse a rating beside a thumb, and neither of them."""
        if (self.rating is None) == (self.thumbs is None):
            raise ValueError("give either rating or thumbs")
        return self


class Opinion(BaseModel):
    """What `POST /feedback` returns: the two scores as they were stored."""

    rating: float
    satisfaction: str


def opinion_of(feedback: Feedback) -> Opinion:
    """Return stars or a thumb on one scale: 1 star is 0, 5 are 1; 3 are neutral."""
    stars = feedback.rating or {"up": 5, "down": 1}[feedback.thumbs or "up"]
    word = "unsatisfied" if stars < 3 else "neutral" if stars == 3 else "satisfied"
    return Opinion(rating=(stars - 1) / 4, satisfaction=word)


@APP.exception_handler(RequestValidationError)
def refuse(_: Request, error: RequestValidationError) -> Response:
    """Say what is wrong and where. FastAPI's own answer repeats what was sent, and fails on NaN."""
    wrong = [{"where": list(each["loc"]), "why": each["msg"]} for each in error.errors()]
    return Response(json.dumps({"detail": wrong}), 422, media_type="application/json")


# %% 4. Store an opinion so that a second one replaces it
#
# `create_score` puts a score into a queue and returns: it cannot say that Langfuse is down.
# The call below is the same request made at once. Langfuse takes a score for the same one
# when id, name and day agree, so its time is that of the trace, not that of the click; and
# a field left out keeps its old value, so that a missing comment is stored as such.


def trace_began(trace_id: str) -> datetime | None:
    """Return the second in which a stored trace began, or None for an unknown trace."""
    found = get_client().api.observations.get_many(trace_id=trace_id, fields="core", limit=1000)
    began = min((observation.start_time for observation in found.data), default=None)
    return began and began.replace(microsecond=0)


def store_opinion(trace_id: str, began: datetime, opinion: Opinion, comment: str) -> None:
    """Store both scores. Raise `NotStoredError`, or the error of the request.

    In Langfuse: Scores shows `user-rating` over time; filter traces by `user-satisfaction`
    to read the answers that people did not like.
    """
    both = (
        ("user-rating", ScoreDataType.NUMERIC, opinion.rating),
        ("user-satisfaction", ScoreDataType.CATEGORICAL, opinion.satisfaction),
    )
    scores = [
        CreateScoreRequest(
            id=f"{trace_id}-{name}",
            trace_id=trace_id,
            name=name,
            data_type=data_type,
            value=value,
            comment=comment or "(no comment)",
            timestamp=began,
            environment=read_settings()["LANGFUSE_TRACING_ENVIRONMENT"].value,
        )
        for name, data_type, value in both
    ]
    stored = get_client().api.scores.create(request=scores)
    if isinstance(stored, CreateScoreBatchResults):
        raise NotStoredError(f"Langfuse refused a score: {stored.errors}")


@APP.post("/feedback")
def feedback(body: Feedback, request: Request) -> Opinion:
    """Store an opinion; 404 for an unknown trace, 503 where Langfuse did not take it."""
    if not tracing_is_on():
        raise HTTPException(503, "Tracing is off here: feedback is not stored.")
    opinion = opinion_of(body)
    try:
        began = request.app.state.answered.get(body.trace_id) or trace_began(body.trace_id)
        if began:
            store_opinion(body.trace_id, began, opinion, body.comment)
    except (httpx.HTTPError, ApiError, NotStoredError) as error:
        logging.getLogger("uvicorn.error").warning("Feedback is not stored: %s", error)
        raise HTTPException(503, "Langfuse cannot store feedback now: send it again.") from error
    if not began:
        raise HTTPException(404, "There is no answer with this trace id.")
    return opinion


# %% 5. Listen on this machine only


def listen(port: int) -> socket.socket:
    """Return a socket on this port of the loopback address, 0 for a free one; or end here."""
    try:
        return socket.create_server(("127.0.0.1", port))
    except (OSError, OverflowError):
        fail(f"Port {port} is taken, or not allowed: choose another one with --port.", 2)


def main() -> None:
    """Serve until Ctrl-C or SIGTERM; then link to the trace of the last answer."""
    options = argparse.ArgumentParser(prog="python -m recipes.feedback_api")
    options.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    listening = listen(options.parse_args().port)
    langfuse = connect()
    # uvicorn ends gracefully at both signals, and repeats them to us afterwards.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    host, port = listening.getsockname()
    show_line(f"Ask at http://{host}:{port}/ask, rate at /feedback. Ctrl-C ends it.")
    config = uvicorn.Config(APP, log_level="warning", timeout_graceful_shutdown=10)
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])
    if answered := list(APP.state.answered):
        show_line(f"Answers that can be rated: {len(answered)}. The trace of the last one:")
        show_line(f"  {trace_link(langfuse, answered[-1])}", "blue")


if __name__ == "__main__":
    main()
