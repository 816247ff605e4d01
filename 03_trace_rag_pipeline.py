"""Find the step that went wrong.

A wrong answer does not say which step was at fault: the query that was searched for, the
search that missed the passage, or the model that misread it. Trace every step with its
type, and the trace says; ask the API, and it says so for all traces at once.

Run it:

    python 03_trace_rag_pipeline.py

The traces have these shapes:

    embed-handbook           embedding

    answer-from-handbook     chain       x 5
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

Try next: set PASSAGES_KEPT to 1 and run again. The answer about exchanges changes: find
the passage it needs in the output of the searches, and the step that dropped it.
"""

import contextvars
import json
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial

import httpx
from langfuse import Langfuse, get_client, observe, propagate_attributes
from langfuse.api import ObservationV2
from langfuse.api.core import ApiError
from langfuse.model import TextPromptClient
from langfuse.openai import OpenAI

from common.client import connect, tracing_is_on
from common.console import show_answer, show_line, show_result, show_section, show_trace
from common.readback import poll, read_trace
from common.retriever import handbook, search, words

QUESTIONS = [
    "Hello, I bought shoes 20 days ago. Can I return them unworn?",
    "What does express delivery cost, please?",
    "Is delivery of an exchange free?",
    "My leather shoes are wet. May I dry them on a radiator?",
    "Do you repair bicycles?",  # the handbook does not cover this
]
FACT = "12 euros"  # what the second answer should say
PASSAGES_KEPT = 3
PROMPT_NAME = "answer-from-handbook"
PROMPT = """\
Answer in one sentence, only from the passages below.
If the passages do not answer the question, say "The handbook does not say."

{{passages}}"""
Vector = list[float]
Search = Callable[[str], list[str]]


# %% 1. Keep the prompt in Langfuse, and a copy in the code
#
# A prompt that lives in Langfuse can be changed without a deployment, and every answer
# says which version wrote it. The copy here creates the first version, and answers when
# Langfuse cannot be asked.


def load_prompt(langfuse: Langfuse) -> TextPromptClient | None:
    """Return the version labelled `production`, creating it if there is none.

    In Langfuse: open Prompts. Move the label `production` to another version, and the
    next run uses it. With tracing off nothing is asked, and PROMPT is used as it is.
    """
    if not tracing_is_on():
        return None
    try:
        if not langfuse.api.prompts.list(name=PROMPT_NAME, label="production").data:
            langfuse.create_prompt(name=PROMPT_NAME, prompt=PROMPT, labels=["production"])
        return langfuse.get_prompt(PROMPT_NAME)  # `production` is the label by default
    except (httpx.HTTPError, ApiError):
        return None  # an answer must not depend on Langfuse being there


# %% 2. Make every step an observation with a type
#
# The type is more than an icon: it lets you filter all retrievers or all embeddings at
# once, and only `generation` and `embedding` carry tokens and cost. Inputs are set by
# hand where the arguments would show a client or a whole index.


def rewrite_query(client: OpenAI, question: str) -> str:
    """Ask the model for search keywords in place of the sentence the user typed.

    In Langfuse: compare the output of `rewrite-query` with the question. What is lost
    here cannot be found below.
    """
    response = client.chat.completions.create(
        name="rewrite-query",
        model=os.environ["OPENAI_MODEL"],
        messages=[
            {"role": "system", "content": "Rewrite the question as search keywords."},
            {"role": "user", "content": question},
        ],
        max_completion_tokens=500,
    )
    return response.choices[0].message.content or question


def embed(client: OpenAI, name: str, texts: list[str]) -> list[Vector]:
    """Return one vector a text; the call is an embedding with its tokens and cost.

    In Langfuse: the type `embedding` has tokens and cost like a generation. The output
    says how many numbers came back, not which: nobody can read 1,536 of them.
    """
    response = client.embeddings.create(
        name=name, model=os.environ["OPENAI_EMBEDDING_MODEL"], input=texts
    )
    return [item.embedding for item in response.data]


@observe(name="search-by-words", as_type="retriever", capture_input=False)
def search_by_words(query: str) -> list[str]:
    """Return the passages that share words with the query, best first."""
    get_client().update_current_span(input=query)
    return [passage.text for passage in search(query, limit=4)]


@observe(name="search-by-meaning", as_type="retriever", capture_input=False)
def search_by_meaning(client: OpenAI, index: dict[str, Vector], query: str) -> list[str]:
    """Return the passages whose vectors point in the query's direction, best first.

    In Langfuse: `embed-query` is nested here, because this search is what needs it.
    """
    get_client().update_current_span(input=query)
    [asked] = embed(client, "embed-query", [query])

    def likeness(text: str) -> float:
        return sum(a * b for a, b in zip(index[text], asked, strict=True))

    return sorted(index, key=likeness, reverse=True)[:4]


def search_archive(query: str) -> list[str]:
    """Search a database file that is not there, as happens after a bad deployment.

    In Langfuse: the step has the level ERROR and SQLite's own message. The steps above
    it have not: they did what they should.
    """
    with (
        get_client().start_as_current_observation(
            name="search-archive", as_type="retriever", input=query
        ),
        closing(sqlite3.connect("file:archive-of-2019.db?mode=ro", uri=True)) as archive,
    ):
        return [row[0] for row in archive.execute("SELECT text FROM passages")]


# %% 3. Search in threads without losing the trace
#
# A thread of a pool knows nothing of the observation that is current where the work was
# handed over: what it traces starts a trace of its own. Run it in a copy of the context.


@observe(name="find-passages", as_type="retriever", capture_input=False)
def find_passages(searches: list[Search], query: str) -> list[list[str]]:
    """Run all searches at once; return a list of passages for each search that worked.

    In Langfuse: in the timeline the searches overlap under `find-passages`. Without
    `copy_context().run` each would start a trace of its own, without session, user and
    tags, and this step would look as if it had found its passages by itself.
    """
    get_client().update_current_span(input=query)
    with ThreadPoolExecutor() as pool:
        tasks = [pool.submit(contextvars.copy_context().run, each, query) for each in searches]
    return [task.result() for task in tasks if task.exception() is None]


@observe(name="rank-passages", capture_input=False)
def rank_passages(rankings: list[list[str]]) -> list[str]:
    """Join rankings: a passage gains more the higher it stands, and in the more of them.

    In Langfuse: input and output show what was dropped. The right passage in the input
    but not in the output means that PASSAGES_KEPT is too small, or the ranking wrong.
    """
    get_client().update_current_span(input=rankings)
    gained: dict[str, float] = {}
    for ranking in rankings:
        for place, text in enumerate(ranking):
            # Reciprocal rank fusion; 60 keeps a first place from deciding alone.
            gained[text] = gained.get(text, 0) + 1 / (60 + place)
    return sorted(gained, key=lambda text: -gained[text])[:PASSAGES_KEPT]


# %% 4. Write the answer, and check that the passages support it
#
# The check is code, not a model: which share of the answer's words stands in the
# passages. It costs nothing, so it can run on every answer. It finds inventions; an answer
# to another question than the one asked is grounded, too.


def write_answer(
    client: OpenAI, question: str, passages: list[str], prompt: TextPromptClient | None
) -> str:
    """Ask for an answer from the passages, linked to the version of the prompt.

    In Langfuse: `write-answer` names the prompt and its version; the page of the prompt
    shows what each version cost and how it scored.
    """
    text = "\n".join(passages)
    system = prompt.compile(passages=text) if prompt else PROMPT.replace("{{passages}}", text)
    response = client.chat.completions.create(
        name="write-answer",
        model=os.environ["OPENAI_MODEL"],
        messages=[{"role": "system", "content": system}, {"role": "user", "content": question}],
        max_completion_tokens=500,
        langfuse_prompt=prompt,
    )
    return response.choices[0].message.content or ""


@observe(name="check-grounding", as_type="evaluator", capture_input=False)
def check_grounding(answer: str, passages: list[str]) -> float:
    """Return the share of the answer's words that stand in the passages, from 0 to 1.

    In Langfuse: the score `grounding` is shown on the trace. Low with an abstention is
    as it should be; low with a confident answer is an invention.
    """
    langfuse = get_client()
    langfuse.update_current_span(input={"answer": answer, "passages": passages})
    said = words(answer)
    share = round(len(said & words(" ".join(passages))) / len(said), 3) if said else 0.0
    langfuse.score_current_trace(name="grounding", value=share, data_type="NUMERIC")
    return share


# %% 5. Join the steps into one trace, and the questions into one session
#
# The pipeline is a function that calls the others. What joins several questions is the
# session that `main` opens around them.


@observe(name="answer-from-handbook", as_type="chain", capture_input=False)
def answer_from_handbook(
    client: OpenAI, searches: list[Search], question: str, prompt: TextPromptClient | None
) -> str:
    """Answer a question, or say that the handbook cannot be searched.

    In Langfuse: read the tree from the top. The first step whose output is wrong while
    its input was right is the one to mend. Under Sessions the questions of one customer
    stand below one another.
    """
    get_client().update_current_span(input=question)
    rankings = find_passages(searches, rewrite_query(client, question))
    if not rankings:
        return "Sorry, the handbook cannot be searched at the moment."
    passages = rank_passages(rankings)
    answer = write_answer(client, question, passages, prompt)
    check_grounding(answer, passages)
    return answer


# %% 6. Ask the API which step is slow, and which traces failed
#
# With thousands of traces nobody reads trees. Three questions find the ones worth
# reading: which step is slow, which one failed, which answers have a low score.


def p95_by_step(langfuse: Langfuse, session_id: str, since: datetime) -> list[tuple[str, float]]:
    """Return each step's 95th percentile of latency in seconds, the slowest first.

    In Langfuse: the same query drives a chart under Dashboards. The root is left out: it
    is always the slowest, since it contains the others.
    """
    query = {
        "view": "observations",
        "dimensions": [{"field": "name"}],
        "metrics": [{"measure": "latency", "aggregation": "p95"}],
        "filters": [
            {"column": "sessionId", "operator": "=", "value": session_id, "type": "string"},
            {"column": "type", "operator": "none of", "value": ["CHAIN"], "type": "stringOptions"},
        ],
        "fromTimestamp": since.isoformat(),
        "toTimestamp": (datetime.now(UTC) + timedelta(minutes=1)).isoformat(),
    }
    rows = langfuse.api.metrics.metrics(query=json.dumps(query)).data
    found = [(str(row["name"]), float(row["p95_latency"] or 0) / 1000) for row in rows]
    return sorted(found, key=lambda row: -row[1])


def failed_steps(langfuse: Langfuse, session_id: str) -> list[ObservationV2]:
    """Return the observations of a session that ended in an error, with their input.

    In Langfuse: the filter `level = ERROR` in the table of observations.
    """
    page = langfuse.api.observations.get_many(
        session_id=session_id, level="ERROR", fields="core,basic,io", limit=1000
    )
    failed: list[ObservationV2] = page.data
    return failed


def grounding_by_trace(langfuse: Langfuse, trace_ids: list[str]) -> dict[str, float]:
    """Return the stored grounding score of each trace that has one.

    In Langfuse: the column `grounding` in the table of traces; sort by it.
    """
    page = langfuse.api.scores.get_many(
        name="grounding", trace_id=",".join(trace_ids), fields="subject"
    )
    return {score.subject.id: float(score.value) for score in page.data}


def steps_that_say(observations: list[ObservationV2], text: str) -> list[str]:
    """Return the names of the steps whose output contains a text, in the order they began.

    In Langfuse: search the outputs of a trace. Where the right fact is in one step and no
    longer in the next, you have found the step to mend.
    """
    return [node.name or "" for node in observations if text in str(node.output)]


def main() -> None:
    """Questions in one session: covered, not covered, and one while the search is broken."""
    connect()
    langfuse, client = Langfuse(), OpenAI(timeout=60)
    started = datetime.now(UTC)
    prompt = load_prompt(langfuse)
    vectors = embed(client, "embed-handbook", handbook())
    index = dict(zip(handbook(), vectors, strict=True))
    both: list[Search] = [search_by_words, partial(search_by_meaning, client, index)]
    broken: list[Search] = [search_archive]
    ids = [langfuse.create_trace_id() for _ in QUESTIONS]
    broken_id = langfuse.create_trace_id()
    session_id = f"chat-{langfuse.create_trace_id()[:8]}"

    with propagate_attributes(session_id=session_id, user_id="customer-17", tags=["rag"]):
        show_section("Questions, each searched in two ways at once")
        for question, trace_id in zip(QUESTIONS, ids, strict=True):
            answer = answer_from_handbook(
                client, both, question, prompt, langfuse_trace_id=trace_id
            )
            show_answer(question, answer)
        show_section("The first one again, while the search is broken")
        answer = answer_from_handbook(
            client, broken, QUESTIONS[0], prompt, langfuse_trace_id=broken_id
        )
        show_answer(QUESTIONS[0], answer)

    langfuse.flush()  # hand over what is waiting before anyone asks for it
    if not tracing_is_on():
        show_line("  The rest reads back what is stored: not with tracing off.")
        return
    show_section(f"Express delivery costs {FACT}: which steps of that trace say so")
    saying = steps_that_say(read_trace(langfuse, ids[1]), FACT)
    for name in saying:
        show_result(name, f"contains {FACT}")
    if "rank-passages" in saying and "write-answer" not in saying:
        show_line("  write-answer had it but left it out: the model, not the search.")
    show_section("How much of each answer stands in its passages")
    grounding = poll(
        lambda: grounding_by_trace(langfuse, ids), until=lambda found: len(found) == len(ids)
    )
    for question, trace_id in zip(QUESTIONS, ids, strict=True):
        score = grounding.get(trace_id)
        show_result("not stored" if score is None else f"{score:.2f}", question)
    show_section("The slowest steps of the session, and the one that failed")
    for name, seconds in p95_by_step(langfuse, session_id, started):
        show_result(name, f"p95 {seconds * 1000:,.0f} ms")
    for node in failed_steps(langfuse, session_id):
        show_result(f"{node.name}", f"ERROR on {node.input!r}: {node.status_message}")
    show_section("The trace about express delivery, and the one that failed")
    show_trace(ids[1])
    show_trace(broken_id)


if __name__ == "__main__":
    main()
