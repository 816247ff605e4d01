"""Let users rate the answers they got.

A thumb under an answer is worth most if you can look the answer up: what was asked, what the
model read, what it cost. So each answer goes out with the id of its trace, and the rating
comes back with that id, often minutes later and sometimes twice.

Run it:

    python -m recipes.feedback_api --port 8000

and in another terminal, with the trace id of the answer in place of the dots:

    curl --json '{"question": "How long is the warranty?"}' 127.0.0.1:8000/ask
    curl --json '{"trace_id": "…", "rating": 4, "comment": "clear"}' 127.0.0.1:8000/feedback

The trace has this shape:

    answer-question          chain
      write-answer           generation

Try next: rate the same answer again with `"thumbs": "down"` instead of the rating, and look
at the scores of its trace: there are still two.
"""

import json
import logging
import os
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
from langfuse import Langfuse, get_client
from langfuse.api import CreateScoreBatchResults, CreateScoreRequest, ScoreDataType
from langfuse.api.core import ApiError
from langfuse.openai import OpenAI
from pydantic import BaseModel, ConfigDict, Field, model_validator

from common.client import connect, tracing_is_on
from common.console import fail, show_line, show_link
from common.errors import NotStoredError
from common.readback import sent_count
from common.retriever import search
from common.settings import read_settings
from recipes import Arguments

MAX_QUESTION, MAX_COMMENT = 500, 1_000  # characters
REMEMBERED = 10_000  # answers
Opinion = dict[str, float | str]  # the value of each score, by its name


# %% 1. Start and end with the server
#
# Traces are sent in the background, so when the server is told to stop, the last ones are
# still waiting. Ratings never wait: section 4 stores them before it answers.


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the model's client before the first request; after the last, send what is waiting."""
    with OpenAI(timeout=60) as client:
        app.state.client = client
        app.state.answered = OrderedDict[str, datetime]()  # when, by trace id
        yield
    get_client().flush()


# FastAPI's own spans would be the parents of ours without being stored themselves, and Langfuse
# leaves the scores of such a trace out of its breakdowns by user, session, tag and trace name.
APP = FastAPI(
    title="Ask the shop, and rate the answer", lifespan=lifespan, telemetry={"tracing": False}
)
# A web page could give this machine a name of its own, to get round the browser's rules.
APP.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])


# %% 2. Answer, and hand out the trace id
#
# The endpoints are plain functions: FastAPI runs each call in a thread, so a slow model holds
# up nobody else. This process remembers what it has answered, so that an answer can be rated
# at once, although Langfuse Cloud shows its trace only seconds later.


class Question(BaseModel):
    """What `POST /ask` accepts."""

    model_config = ConfigDict(extra="forbid", strict=True)
    question: str = Field(min_length=1, max_length=MAX_QUESTION)


def answer_question(client: OpenAI, question: str) -> tuple[str, str]:
    """Return the answer, and the id of its trace.

    In Langfuse: open the trace. Next to the question and the answer, its scores tell you what
    the user thought.
    """
    with get_client().start_as_current_observation(
        name="answer-question", as_type="chain", input=question
    ) as root:
        passages = "\n".join(passage.text for passage in search(question))
        told = f"Answer in one sentence, only from:\n{passages}"
        response = client.chat.completions.create(
            name="write-answer",
            model=os.environ["OPENAI_MODEL"],
            messages=[{"role": "system", "content": told}, {"role": "user", "content": question}],
            max_completion_tokens=500,
        )
        answer = response.choices[0].message.content or ""
        root.update(output=answer)
    return answer, root.trace_id


@APP.post("/ask")
def ask(body: Question, request: Request) -> dict[str, str | None]:
    """Return an answer and its trace id, null if no trace is stored; 502 if the model fails."""
    began = datetime.now(UTC)
    try:
        answer, trace_id = answer_question(request.app.state.client, body.question)
    except openai.OpenAIError as error:
        raise HTTPException(502, "The model cannot answer at the moment.") from error
    if not sent_count(trace_id):  # tracing is off, or left this one out of its sample
        return {"answer": answer, "trace_id": None}
    request.app.state.answered[trace_id] = began
    if len(request.app.state.answered) > REMEMBERED:
        request.app.state.answered.popitem(last=False)
    return {"answer": answer, "trace_id": trace_id}


# %% 3. Refuse what is not an opinion
#
# What arrives here comes from a browser and is stored for people to read. So only the fields
# of the form are accepted, each with a type and a limit. A comment is text, never markup.


class Feedback(BaseModel):
    """What `POST /feedback` accepts: stars or a thumb, and perhaps a comment."""

    model_config = ConfigDict(extra="forbid", strict=True)
    trace_id: str = Field(pattern="^[0-9a-f]{32}$")
    rating: int | None = Field(default=None, ge=1, le=5)
    thumbs: Literal["up", "down"] | None = None
    comment: str = Field(default="", max_length=MAX_COMMENT)

    @model_validator(mode="after")
    def take_one(self) -> Self:
        """Refuse a rating together with a thumb, and neither."""
        if (self.rating is None) == (self.thumbs is None):
            raise ValueError("give either rating or thumbs")
        return self


def opinion_of(feedback: Feedback) -> Opinion:
    """Return the value of each score: 1 star is 0 and 5 stars are 1; a thumb is 5 stars or 1."""
    stars = feedback.rating or (5 if feedback.thumbs == "up" else 1)
    word = "unsatisfied" if stars < 3 else "neutral" if stars == 3 else "satisfied"
    return {"user-rating": (stars - 1) / 4, "user-satisfaction": word}


@APP.exception_handler(RequestValidationError)
def refuse(_: Request, error: RequestValidationError) -> Response:
    """Say what is wrong and where. FastAPI's own answer repeats what was sent, and fails on NaN."""
    wrong = [{"where": list(each["loc"]), "why": each["msg"]} for each in error.errors()]
    return Response(json.dumps({"detail": wrong}), 422, media_type="application/json")


# %% 4. Store an opinion so that a second one replaces it
#
# `create_score` only queues a score, and cannot tell you that Langfuse is down. This is the same
# request, sent at once. It replaces a score with the same id, name and day, so each score gets
# the time of the answer, not of the click. A field that is left out keeps its old value, so a
# missing comment is stored in words.


def trace_began(trace_id: str) -> datetime | None:
    """Return when a stored trace began, or None for an unknown one."""
    found = get_client().api.observations.get_many(trace_id=trace_id, fields="core", limit=1000)
    return min((observation.start_time for observation in found.data), default=None)


def store_opinion(trace_id: str, began: datetime, opinion: Opinion, comment: str) -> None:
    """Store both scores. Raise `NotStoredError`, or the error of the request.

    In Langfuse: open the trace to see `user-rating` and `user-satisfaction` with the comment.

    In Langfuse (not on the local page): filter Tracing by the score `user-satisfaction` to
    read the answers that people did not like.
    """
    scores = [
        CreateScoreRequest(
            id=f"{trace_id}-{name}",
            trace_id=trace_id,
            name=name,
            data_type=ScoreDataType("CATEGORICAL" if isinstance(value, str) else "NUMERIC"),
            value=value,
            comment=comment or "(no comment)",
            timestamp=began,
            environment=read_settings()["LANGFUSE_TRACING_ENVIRONMENT"].value,
        )
        for name, value in opinion.items()
    ]
    stored = get_client().api.scores.create(request=scores)
    if isinstance(stored, CreateScoreBatchResults):
        raise NotStoredError(f"Langfuse refused a score: {stored.errors}")


@APP.post("/feedback")
def feedback(body: Feedback, request: Request) -> Opinion:
    """Store an opinion; 404 for an unknown trace, 503 if Langfuse did not accept it."""
    if not tracing_is_on():
        raise HTTPException(503, "Tracing is off here: feedback is not stored.")
    opinion = opinion_of(body)
    try:
        began = request.app.state.answered.get(body.trace_id) or trace_began(body.trace_id)
        if not began:
            raise HTTPException(404, "There is no answer with this trace id.")
        store_opinion(body.trace_id, began, opinion, body.comment)
    except (httpx.HTTPError, ApiError, NotStoredError) as error:
        logging.getLogger("uvicorn.error").warning("Feedback is not stored: %s", error)
        raise HTTPException(503, "Langfuse cannot store feedback now: send it again.") from error
    return opinion


def main() -> None:
    """Serve on this machine only until Ctrl-C; then link to the trace of the last answer."""
    options = Arguments(prog="python -m recipes.feedback_api")
    options.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    port = options.parse_args().port
    try:
        listening = socket.create_server(("127.0.0.1", port))
    except (OSError, OverflowError):
        fail(f"Port {port} is taken, or not allowed: choose another one with --port.", 2)
    connect()
    langfuse = Langfuse()
    own = listening.getsockname()[1]
    show_line(f"POST questions to http://127.0.0.1:{own}/ask. Ctrl-C stops the server.")
    with suppress(KeyboardInterrupt):
        uvicorn.Server(uvicorn.Config(APP, log_level="warning")).run(sockets=[listening])
    if answered := list(APP.state.answered):
        show_link("The last answer's trace: ", langfuse.get_trace_url(trace_id=answered[-1]) or "")


if __name__ == "__main__":
    main()
