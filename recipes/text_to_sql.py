"""Let people ask a database, and see what is run in their name.

SQL from a model can fail, answer another question than the one asked, or do harm. Trace
every query, score whether it ran and whether its answer was liked, and run it where it
can do no harm.

Run it:

    python -m recipes.text_to_sql

The traces have these shapes:

    answer-question    chain    x 8
      write-sql        generation
      run-sql          tool

    answer-question    chain    x 3
      run-sql          tool

Try next: give the question about March a query of its own in VERIFIED, and watch its thumb.
"""

import json
import re
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from langfuse import Langfuse, get_client, observe, propagate_attributes
from langfuse.api import ObservationV2
from langfuse.openai import OpenAI

from common import console
from common.client import connect
from common.llm import model_name, openai_client
from common.orders import create_orders
from common.readback import NotStoredError, poll, sent_count
from common.settings import TOP, read_settings

VERIFIED = {  # queries that somebody has checked, by their question
    "How many orders were returned": "SELECT count(*) FROM orders WHERE status = 'returned'",
    "How many orders were placed in June": (
        "SELECT count(*) FROM orders WHERE ordered_on LIKE '2026-06-%'"
    ),
    "What is our revenue in euros": (
        "SELECT sum(pairs * price) FROM orders JOIN products ON products.id = product_id"
    ),
    "Which city orders most": (
        "SELECT city FROM orders JOIN customers ON customers.id = customer_id "
        "GROUP BY city ORDER BY count(*) DESC LIMIT 1"
    ),
}
ASKED = [  # team, question, and the answer as the one who asks knows it: None gives no thumb
    ("support", "How many orders were returned?", 41),
    ("sales", "What is our revenue in euros?", 108_561.5),
    ("support", "Which city orders most?", "Utrecht"),
    ("logistics", "how many orders  were returned", 41),
    ("sales", "How many orders were placed in March?", 31),
    ("sales", "What does each product cost?", None),
    ("logistics", "In which city do most customers live?", "Utrecht"),
    ("logistics", "Which customers live in Delft?", "Bob"),
    ("sales", "what is our revenue in euros", None),
    ("support", "How many pairs were returned?", 102),
    ("logistics", "Which city orders most", "Utrecht"),
]
Rows = list[tuple[Any, ...]]


# %% 1. Tell the model what it needs to know
#
# The schema says what can be asked. Verified queries show how this company counts, which
# no schema says; they are the part of such a prompt that is worth your time.

FORM = {  # what the model has to fill in, as a JSON schema
    "type": "object",
    "properties": {"sql": {"type": "string"}},
    "required": ["sql"],
    "additionalProperties": False,
}


def read_schema(path: Path) -> list[str]:
    """Return the definition of each table, one line each, as the file itself has it."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
        found = database.execute("SELECT sql FROM sqlite_master WHERE type = 'table'").fetchall()
    return [" ".join(sql.split()) for (sql,) in found]


def write_sql(client: OpenAI, schema: list[str], question: str) -> str:
    """Ask the model for a query, and return its reply.

    In Langfuse: select `write-sql`. Its input is all that the model knew.
    """
    told = "Write one SQLite query that answers the question, and nothing else.\nThe tables:"
    examples = [f"{sql} -- {asked}" for asked, sql in VERIFIED.items()]
    prompt = [told, *schema, "Verified queries, each with its question:", *examples]
    response = client.chat.completions.create(
        name="write-sql",
        model=model_name(),
        messages=[
            {"role": "system", "content": "\n".join(prompt)},
            {"role": "user", "content": question},
        ],
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "query", "strict": True, "schema": FORM},
        },
    )
    return response.choices[0].message.content or ""


def find_sql(reply: str) -> str:
    """Return the SQL in a reply: from the form, or from a code block where a model ignores it.

    `find_sql('{"sql": "SELECT 1"}') -> "SELECT 1"`
    """
    with suppress(ValueError, TypeError, KeyError):
        reply = str(json.loads(reply)["sql"])
    block = re.search(r"```(?:sql\w*)?\s*(.*?)\s*```", reply, re.DOTALL | re.IGNORECASE)
    return (block[1] if block else reply).encode("utf-8", "replace").decode()


# %% 2. Run its query as if an attacker had written it
#
# Whoever types the question steers the query. In a read-only file nothing can be changed,
# but ATTACH opens another, and a query can run for ever. So only what reads is authorised,
# one statement, for some seconds, with few rows and short values.

MAX_SECONDS = 2.0
MAX_ROWS = 20
LIMITS = {sqlite3.SQLITE_LIMIT_LENGTH: 10_000, sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 100}
READS = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}


def open_guarded(path: Path, seconds: float) -> sqlite3.Connection:
    """Return a connection that can only read, and only for so many seconds from now."""
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
    for limit, most in LIMITS.items():
        connection.setlimit(limit, most)
    connection.set_authorizer(
        lambda action, *_: sqlite3.SQLITE_OK if action in READS else sqlite3.SQLITE_DENY
    )
    deadline = time.monotonic() + seconds
    connection.set_progress_handler(lambda: time.monotonic() > deadline, 1000)
    return connection


def fetch_rows(path: Path, sql: str, seconds: float = MAX_SECONDS) -> Rows:
    """Return the first rows of one query; anything else raises sqlite3.Error.

    What is refused is `not authorized`, what is stopped is `interrupted`.
    """
    with closing(open_guarded(path, seconds)) as connection:
        cursor = connection.execute(sql)
        if cursor.description is None:
            raise sqlite3.ProgrammingError("this is not a query")
        return cursor.fetchmany(MAX_ROWS)


@observe(name="run-sql", as_type="tool", capture_input=False)
def run_sql(path: Path, sql: str) -> Rows:
    """Run a query where it can do no harm.

    In Langfuse: filter by name `run-sql` and level ERROR. The input is the SQL, the
    status message what SQLite said about it.
    """
    get_client().update_current_span(input=sql)
    return fetch_rows(path, sql)


# %% 3. Ask the model once for each question, and score each answer
#
# The same question about the same schema has the same query. The query is kept, not its
# result, so that a cached answer is as fresh as any other; one that failed is not kept.

Cache = dict[tuple[str, ...], str]


def cache_key(question: str, schema: list[str]) -> tuple[str, ...]:
    """Return the same key for every spelling: `"How  many?"` is `"how many"`."""
    return (" ".join(question.casefold().split()).rstrip(" ?!."), *schema)


@observe(name="answer-question", as_type="chain", capture_input=False, capture_output=False)
def answer_question(client: OpenAI, path: Path, cache: Cache, question: str) -> Rows:
    """Return the rows that answer a question; what goes wrong is scored, and raised.

    In Langfuse: a chart of `sql_execution_success`. It falls when the schema changes and
    the verified queries do not.
    """
    langfuse, schema, success = get_client(), read_schema(path), False
    langfuse.update_current_span(input=question)
    try:
        key = cache_key(question, schema)
        sql = cache.get(key) or find_sql(write_sql(client, schema, question))
        langfuse.update_current_span(output={"sql": sql}, metadata={"sql_length": len(sql)})
        rows = run_sql(path, sql)
        langfuse.update_current_span(output={"sql": sql, "rows": rows})
        cache[key], success = sql, True
    finally:
        langfuse.score_current_trace(
            name="sql_execution_success",
            value=int(success),
            data_type="BOOLEAN",
            score_id=f"{langfuse.get_current_trace_id()}-sql-execution-success",
        )
    return rows


def rate_answer(langfuse: Langfuse, trace_id: str, liked: bool) -> None:
    """Store a thumb, up or down; a second opinion replaces the first.

    In Langfuse: `user-thumbs` is false and `sql_execution_success` true where a query ran
    and answered something else. No error shows that.
    """
    langfuse.create_score(
        name="user-thumbs",
        value=int(liked),
        data_type="BOOLEAN",
        trace_id=trace_id,
        score_id=f"{trace_id}-user-thumbs",
    )


def answer_all(langfuse: Langfuse, client: OpenAI, path: Path, run: str) -> Iterator[list[str]]:
    """Answer ASKED; yield trace id, team, question, origin of the SQL, result and thumb.

    In Langfuse: tags are what charts group by, metadata is what lists are filtered by.
    """
    cache, schema = Cache(), read_schema(path)
    for team, question, known in ASKED:
        trace_id = langfuse.create_trace_id()
        cached = cache_key(question, schema) in cache
        origin = "cache" if cached else "model"
        facts = {"run": run, "team": team, "database": path.name, "cached": str(cached).lower()}
        sizes = {"table_count": str(len(schema)), "query_length": str(len(question))}
        tags = [f"team:{team}", f"sql:{origin}"]
        with propagate_attributes(tags=tags, metadata=facts | sizes):
            try:
                rows = answer_question(client, path, cache, question, langfuse_trace_id=trace_id)
                result = str(rows[0][0] if rows else "no rows")
            except sqlite3.Error as error:
                rows, result = [], f"failed: {error}"
        thumb = ""
        if known is not None:
            liked = bool(rows) and known in rows[0]
            rate_answer(langfuse, trace_id, liked)
            thumb = "up" if liked else "down"
        yield [trace_id, team, question, origin, result, thumb]


# %% 4. Report what each team costs, what the cache saves and what fails
#
# Everything here is read back, so another program can make the same report next month.

IN_RUN = {"type": "stringObject", "column": "metadata", "key": "run", "operator": "="}


def sum_by_tag(langfuse: Langfuse, run: str, name: str) -> dict[str, Counter[str]]:
    """Return count, cost in USD and latency in ms, summed for each tag, of this name.

    In Langfuse: the same query builds a chart under Dashboards.
    """
    now = datetime.now(UTC)
    measures = {"count": "count", "totalCost": "sum", "latency": "sum"}
    query = {
        "view": "observations",
        "metrics": [{"measure": what, "aggregation": how} for what, how in measures.items()],
        "dimensions": [{"field": "tags"}],
        "filters": [
            {"type": "string", "column": "name", "operator": "=", "value": name},
            {**IN_RUN, "value": run},
        ],
        "fromTimestamp": (now - timedelta(days=1)).isoformat(),
        "toTimestamp": (now + timedelta(minutes=1)).isoformat(),
    }
    sums: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in langfuse.api.metrics.metrics(query=json.dumps(query)).data:
        for tag in row["tags"]:
            for what, how in measures.items():
                sums[tag][what] += row[f"{how}_{what}"] or 0
    return sums


def read_run(langfuse: Langfuse, run: str, sent: int) -> list[ObservationV2]:
    """Return all observations of a run; raise NotStoredError where fewer come than were sent."""
    fields, only = "core,basic,io,model,usage", json.dumps([{**IN_RUN, "value": run}])
    rows: list[ObservationV2] = poll(
        lambda: langfuse.api.observations.get_many(filter=only, fields=fields, limit=1000).data,
        until=lambda found: len(found) >= sent,
    )
    if len(rows) < sent:
        raise NotStoredError(f"Only {len(rows)} of {sent} observations can be read back.")
    return sorted(rows, key=lambda row: row.start_time)


def read_scores(langfuse: Langfuse, trace_ids: list[str], given: int) -> list[tuple[str, str]]:
    """Return each score of these traces by name, and how often it is true: `"8 of 11"`."""
    asked = {"trace_id": ",".join(trace_ids), "limit": 100}
    scores = poll(
        lambda: langfuse.api.scores.get_many(**asked).data,
        until=lambda found: len(found) >= given,
    )
    names, good = Counter(s.name for s in scores), Counter(s.name for s in scores if s.value)
    return [(name, f"{good[name]} of {names[name]}") for name in sorted(names)]


def show_report(langfuse: Langfuse, run: str, answered: list[list[str]]) -> None:
    """Print the report of a run, and one trace: of a failure, where there is one."""
    trace_ids = [row[0] for row in answered]
    stored = read_run(langfuse, run, sum(map(sent_count, trace_ids)))
    scores = sum(1 + bool(thumb) for *_, thumb in answered)
    answers, calls = (sum_by_tag(langfuse, run, name) for name in ("answer-question", "write-sql"))
    rows = []
    for tag, sums in sorted(answers.items()):
        usd = console.usd_text(calls[tag]["totalCost"])
        average = f"{sums['latency'] / sums['count']:.0f}"
        rows.append((tag, sums["count"], calls[tag]["count"], usd, average))
    console.show_section("What each team costs, and what the cache saves")
    console.show_table(("tag", "questions", "model calls", "USD", "ms a question"), rows)
    called = [row for row in stored if row.type == "GENERATION" and row.level != "ERROR"]
    if unknown := sum("total" not in (row.cost_details or {}) for row in called):
        console.show_result("cost unknown", f"{unknown} calls, in none of these sums")
    for name, share in read_scores(langfuse, trace_ids, scores):
        console.show_result(name, share)
    failed = [row for row in stored if row.name == "run-sql" and row.level == "ERROR"]
    console.show_section("The SQL that failed")
    for row in failed:
        console.show_answer(str(row.status_message), str(row.input))
    console.show_trace(langfuse, str(failed[0].trace_id) if failed else trace_ids[0])


def main() -> None:
    """Answer what three teams ask; then the report, read back from Langfuse."""
    langfuse = connect()
    run = langfuse.create_trace_id()[:8]
    database = (TOP / read_settings()["LOCAL_LANGFUSE_DB"].value).with_name("orders.db")
    create_orders(database)
    console.show_section(f"What three teams ask {database.name}")
    answered = list(answer_all(langfuse, openai_client(), database, run))
    columns = ("team", "question", "SQL from", "answer", "thumb")
    console.show_table(columns, [row[1:] for row in answered])
    langfuse.flush()  # hand over what is waiting before anyone adds it up
    if sent := [row for row in answered if sent_count(row[0])]:
        show_report(langfuse, run, sent)
    else:
        console.show_line("  No report: tracing is off, or LANGFUSE_SAMPLE_RATE left all out.")


if __name__ == "__main__":
    main()
