"""Find the step that went wrong.

A wrong answer does not say where it went wrong: in the query, in the search, or in the
model that read what was found. Trace every step, and you see which one it was.

Run it:

    python 03_trace_rag_pipeline.py

The traces:

    embed-handbook           embedding

    answer-from-handbook     chain       x 3
      rewrite-query          generation
      find-passages          retriever
        search-by-words      retriever
        search-by-meaning    retriever
          embed-query        embedding
      rank-passages          span
      write-answer           generation
      check-grounding        evaluator

    answer-from-handbook     chain
      rewrite-query          generation
      find-passages          retriever
        search-archive       retriever

Try next: set PASSAGES_KEPT to 0 and run again. Section 4 now blames another step.
"""

import contextvars
import json
import os
import sqlite3
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from operator import mul
from typing import Any

from langfuse import Langfuse, get_client, observe, propagate_attributes
from langfuse.api import ObservationV2
from langfuse.model import TextPromptClient
from langfuse.openai import OpenAI

from common.client import connect, tracing_is_on
from common.console import show_answer, show_line, show_result, show_section, show_trace, waiting
from common.readback import poll
from common.retriever import handbook, search, words

QUESTION = "Hello, I bought shoes 20 days ago. Can I return them unworn?"
NOT_COVERED = "Do you repair bicycles?"
MISREAD = "What does express delivery cost, please?"
FACT = "12 euros"  # what its answer should say
PASSAGES_KEPT = 3
Found = dict[str, list[str]]  # {"passages": [...]}, since Langfuse shows a bare list as empty
Search = Callable[[str], Found]
Prompt = TextPromptClient | None  # None: tracing is off, so Langfuse is not asked


# %% 1. Keep the prompt in Langfuse, and a copy in the code
#
# A prompt in Langfuse changes without a deployment, and its config with it: the model it was
# written for, and a limit. A label says which version is in use, and can be moved.

PROMPT_NAME = "answer-from-handbook"
PROMPT = """\
Answer in one sentence, only from the passages below.
If the passages do not answer the question, say "The handbook does not say."

{{passages}}"""


def create_versions(langfuse: Langfuse, model: str) -> None:
    """Create a version for production and one for staging, unless this model has them.

    In Langfuse: open Prompts, and move the label `production`: the next run follows it.
    """
    stored = langfuse.api.prompts.list(name=PROMPT_NAME, label="production").data
    if stored and stored[0].last_config.get("model") == model:
        return
    config = {"model": model, "max_completion_tokens": 500}
    for label, text in (("production", PROMPT), ("staging", f"Be brief. {PROMPT}")):
        langfuse.create_prompt(name=PROMPT_NAME, prompt=text, labels=[label], config=config)


def load_prompt(langfuse: Langfuse, **which: Any) -> TextPromptClient:
    """Return production, or `label="staging"`, or `version=1`; without Langfuse, the copy."""
    return langfuse.get_prompt(PROMPT_NAME, fallback=PROMPT, **which)


# %% 2. Give every step a type
#
# Types are filters: all retrievers, all embeddings. Calls of models have tokens and cost.


def embed(client: OpenAI, name: str, texts: list[str]) -> list[list[float]]:
    """Return one vector per text; in Langfuse, the call is an embedding with its cost."""
    model = os.environ["OPENAI_EMBEDDING_MODEL"]
    response = client.embeddings.create(name=name, model=model, input=texts)
    return [item.embedding for item in response.data]


@observe(name="search-by-words", as_type="retriever")
def search_by_words(query: str) -> Found:
    """Return the passages that share most words with the query, best first."""
    return {"passages": [passage.text for passage in search(query, limit=4)]}


@observe(name="search-by-meaning", as_type="retriever", capture_input=False)
def search_by_meaning(client: OpenAI, index: dict[str, list[float]], query: str) -> Found:
    """Return the passages whose vectors are closest to the query's, best first."""
    get_client().update_current_span(input=query)
    [asked] = embed(client, "embed-query", [query])
    return {"passages": sorted(index, key=lambda text: -sum(map(mul, index[text], asked)))[:4]}


# %% 3. Search in threads, answer, and check the answer
#
# A thread of a pool starts a trace of its own, unless it runs in a copy of your context. The
# check at the end is code, so it can run on every answer: it notices what was made up.


@observe(name="find-passages", as_type="retriever", capture_input=False)
def find_passages(searches: list[Search], query: str) -> dict[str, list[list[str]]]:
    """Run all searches at once; return one list of passages for each that worked.

    In Langfuse: the searches are its children; without `copy_context().run` they are not.
    """
    get_client().update_current_span(input=query)
    with ThreadPoolExecutor() as pool:
        tasks = [pool.submit(contextvars.copy_context().run, each, query) for each in searches]
    return {"rankings": [task.result()["passages"] for task in tasks if not task.exception()]}


def ask(client: OpenAI, name: str, system: str, question: str, **more: Any) -> str:
    """Ask the model, with a name for the step; `more` goes to OpenAI and to Langfuse."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    settings = {"model": os.environ["OPENAI_MODEL"], "max_completion_tokens": 500, **more}
    response = client.chat.completions.create(name=name, messages=messages, **settings)
    return response.choices[0].message.content or ""


@observe(name="rank-passages")
def rank_passages(rankings: list[list[str]]) -> Found:
    """Merge rankings: a passage gains by being near the top, and by being in more lists.

    In Langfuse: compare input and output to see what was dropped.
    """
    gained: dict[str, float] = {}
    for ranking in rankings:
        for place, text in enumerate(ranking):
            gained[text] = gained.get(text, 0) + 1 / (60 + place)  # reciprocal rank fusion
    return {"passages": sorted(gained, key=lambda text: -gained[text])[:PASSAGES_KEPT]}


def write_answer(client: OpenAI, question: str, passages: list[str], prompt: Prompt) -> str:
    """Answer from the passages, with the model and the limit of the prompt's version.

    In Langfuse: `write-answer` links to the version of its prompt.
    """
    text = "\n".join(passages)
    if prompt is None:
        return ask(client, "write-answer", PROMPT.replace("{{passages}}", text), question)
    system = prompt.compile(passages=text)
    return ask(client, "write-answer", system, question, langfuse_prompt=prompt, **prompt.config)


@observe(name="check-grounding", as_type="evaluator")
def check_grounding(answer: str, passages: list[str]) -> float:
    """Return the share of the answer's words that are in the passages, from 0 to 1.

    In Langfuse: see the score `grounding`. Low is right for "The handbook does not say.";
    a confident answer with a low one is made up.
    """
    said = words(answer)
    share = round(len(said & words(" ".join(passages))) / len(said), 3) if said else 0.0
    get_client().score_current_trace(name="grounding", value=share, data_type="NUMERIC")
    return share


@observe(name="answer-from-handbook", as_type="chain", capture_input=False)
def answer_from_handbook(
    client: OpenAI, searches: list[Search], question: str, prompt: Prompt
) -> str:
    """Answer a question, or say that the handbook cannot be searched.

    In Langfuse: fix the first step whose input is right and whose output is wrong.
    """
    get_client().update_current_span(input=question)
    query = ask(client, "rewrite-query", "Rewrite the question as search keywords.", question)
    rankings = find_passages(searches, query or question)["rankings"]
    if not rankings:
        return "Sorry, the handbook cannot be searched at the moment."
    passages = rank_passages(rankings)["passages"]
    answer = write_answer(client, question, passages, prompt)
    check_grounding(answer, passages)
    return answer


# %% 4. Find the step that went wrong
#
# You know what the answer should say: the step after the last one that says it is to blame.


def steps_that_say(stored: list[ObservationV2], fact: str) -> list[str]:
    """Return the names of the steps whose output contains the fact, as you would read them."""
    return [node.name or "" for node in stored if fact in str(node.output)]


def blame(saying: list[str]) -> str:
    """Return in words which step lost the fact."""
    if "write-answer" in saying:
        return "The answer says it: nothing to fix."
    if "rank-passages" in saying:
        return "The model was given the fact and left it out: change the prompt or the model."
    if "find-passages" in saying:
        return "The search found it and the ranking dropped it: keep more passages."
    return "No search found it: change the query, the search or the handbook."


# %% 5. Let a step fail
#
# An exception marks the step that raised it as an ERROR, but not the steps that handle it.


@observe(name="search-archive", as_type="retriever")
def search_archive(query: str) -> Found:
    """Search a database that is not there, as happens after a bad deployment.

    In Langfuse: `search-archive` has the status ERROR, and SQLite's message.
    """
    with closing(sqlite3.connect("file:archive-of-2019.db?mode=ro", uri=True)) as archive:
        found = archive.execute("SELECT text FROM passages WHERE text LIKE ?", [f"%{query}%"])
        return {"passages": [text for (text,) in found]}


# %% 6. Ask for what is slow, failed or doubtful
#
# Nobody reads a thousand trees. Let the API find the few that are worth reading.


def p95_by_step(langfuse: Langfuse, session_id: str) -> list[tuple[str, float]]:
    """Return each step's 95th percentile of latency in seconds, slowest first, without the root.

    In Langfuse: the same query makes a chart under Dashboards.
    """
    now = datetime.now(UTC)
    query = {
        "view": "observations",
        "dimensions": [{"field": "name"}],
        "metrics": [{"measure": "latency", "aggregation": "p95"}],
        "filters": [
            {"column": "sessionId", "operator": "=", "value": session_id, "type": "string"},
            {"column": "type", "operator": "none of", "value": ["CHAIN"], "type": "stringOptions"},
        ],
        "orderBy": [{"field": "p95_latency", "direction": "desc"}],
        "fromTimestamp": (now - timedelta(hours=1)).isoformat(),
        "toTimestamp": (now + timedelta(minutes=1)).isoformat(),
    }
    rows = langfuse.api.metrics.metrics(query=json.dumps(query)).data
    return [(str(row["name"]), float(row["p95_latency"] or 0) / 1000) for row in rows]


def failed_steps(langfuse: Langfuse, session_id: str) -> list[tuple[str, str]]:
    """Return name and message of each observation of a session that ended in an error.

    In Langfuse: clear "Is Root Observation", and set Status to ERROR.
    """
    failed = langfuse.api.observations.get_many(session_id=session_id, level="ERROR")
    return [(node.name or "", node.status_message or "") for node in failed.data]


def grounding_by_question(langfuse: Langfuse, session_id: str) -> dict[str, float]:
    """Return the question and the stored grounding of each trace of a session that has one.

    In Langfuse: set the facet `grounding` in Tracing to a range.
    """
    roots = langfuse.api.observations.get_many(
        session_id=session_id, name="answer-from-handbook", fields="core,io"
    )
    asked = {node.trace_id or "": str(node.input) for node in roots.data}
    scores = langfuse.api.scores.get_many(
        name="grounding", trace_id=",".join(asked), fields="subject"
    )
    return {asked[score.subject.id]: float(score.value) for score in scores.data}


def main() -> None:
    """Run the sections in order; each is followed by the trace that it left."""
    connect()
    langfuse, client, prompt = Langfuse(), OpenAI(), None
    show_section("1. Keep the prompt in Langfuse, and a copy in the code")
    if tracing_is_on():
        create_versions(langfuse, os.environ["OPENAI_MODEL"])
        prompt = load_prompt(langfuse)
        for kind, value in (("label", "production"), ("label", "staging"), ("version", 1)):
            found = load_prompt(langfuse, **{kind: value})
            show_result(f"{kind} {value}", f"version {found.version}, {found.config}")
    else:
        show_line("  Skipped: tracing is off, so the copy in the code answers.")

    show_section("2. Give every step a type")
    index = dict(zip(handbook(), embed(client, "embed-handbook", handbook()), strict=True))
    both: list[Search] = [search_by_words, partial(search_by_meaning, client, index)]
    show_trace()

    session_id = f"chat-{uuid.uuid4().hex[:8]}"  # one customer's conversation
    with propagate_attributes(session_id=session_id, user_id="customer-17", tags=["rag"]):
        show_section("3. Search in threads, answer, and check the answer")
        for question in (NOT_COVERED, QUESTION):
            show_answer(question, answer_from_handbook(client, both, question, prompt))
            show_trace()
        show_section("4. Find the step that went wrong")
        show_answer(MISREAD, answer_from_handbook(client, both, MISREAD, prompt))
        if stored := show_trace():
            saying = steps_that_say(stored, FACT)
            show_result(f'Says "{FACT}"', ", ".join(saying) or "no step")
            show_line(f"  {blame(saying)}", "bold")
        show_section("5. Let a step fail")
        show_answer(QUESTION, answer_from_handbook(client, [search_archive], QUESTION, prompt))
        show_trace()

    show_section("6. Ask for what is slow, failed or doubtful")
    if not tracing_is_on():
        show_line("  Skipped: with tracing off nothing is stored.")
        return
    for name, seconds in p95_by_step(langfuse, session_id)[:3]:
        show_result(name, f"p95 {seconds * 1000:,.0f} ms")
    for name, message in failed_steps(langfuse, session_id):
        show_result(name, f"ERROR: {message}")
    with waiting("Waiting for the scores"):
        read = partial(grounding_by_question, langfuse, session_id)
        scored = poll(read, until=lambda found: len(found) == 3)
    for question, score in scored.items():
        show_result(f"grounding {score:.2f}", question)


if __name__ == "__main__":
    main()
