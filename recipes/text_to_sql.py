"""Let people ask a database questions, and see which SQL runs on their behalf.

SQL from a model can fail, answer a different question, or do harm. Run it where it can do no
harm, trace every query, and score whether it ran and whether people liked the answer.

Run it:

    python -m recipes.text_to_sql

The traces have these shapes:

    answer-question    chain    x 5
      write-sql        generation
      run-sql          tool

    answer-question    chain    x 2
      run-sql          tool

Try next: add a query for the question about March to VERIFIED, and watch its thumb.
"""

import os
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from langfuse import Langfuse, get_client, observe, propagate_attributes
from langfuse.api import ObservationV2
from langfuse.openai import OpenAI

from common import console
from common.client import connect
from common.readback import read_trace, sent_count
from common.settings import TOP, read_settings

VERIFIED = {  # queries that somebody has checked, by question
    "How many orders were returned": "SELECT count(*) FROM orders WHERE status = 'returned'",
    "How many orders were placed in June": (
        "SELECT count(*) FROM orders WHERE ordered_on LIKE '2026-06-%'"
    ),
    "What is our revenue in euros": (
        "SELECT sum(pairs * price) FROM orders JOIN products ON products.id = product_id"
    ),
}
ASKED = [  # team, question, and the right answer, which the people who ask know
    ("support", "How many orders were returned?", 41),
    ("sales", "What is our revenue in euros?", 108_561.5),
    ("logistics", "how many orders  were returned", 41),
    ("sales", "How many orders were placed in March?", 31),
    ("logistics", "Which customers live in Delft?", "Bob"),
    ("sales", "what is our revenue in euros", 108_561.5),
    ("support", "How many pairs were returned?", 102),
]
Rows = list[tuple[Any, ...]]
SHOP = """
CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT, city TEXT);
CREATE TABLE products (id INTEGER PRIMARY KEY, name TEXT, price REAL /* in euros */);
CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id INTEGER REFERENCES customers,
    product_id INTEGER REFERENCES products, pairs INTEGER,
    status TEXT /* open, delivered or returned */, ordered_on TEXT /* such as 2026-12-31 */);

INSERT INTO customers (name, city) VALUES ('Ada', 'Utrecht'), ('Bob', 'Delft'), ('Cyd', 'Utrecht');
INSERT INTO products (name, price) VALUES ('Trail runner', 89.5), ('Leather boot', 139.0);
WITH RECURSIVE day(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM day WHERE n < 364)
INSERT INTO orders SELECT n + 1, 1 + n % 3, 1 + n % 2, 1 + n % 4,
    CASE n % 9 WHEN 0 THEN 'open' WHEN 1 THEN 'returned' ELSE 'delivered' END,
    date('2026-01-01', n || ' days') FROM day;
"""


def create_orders(path: Path) -> None:
    """Write a year of the shop's orders to a SQLite file, the same bytes every time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(f"{path.name}.{os.getpid()}")
    with closing(sqlite3.connect(":memory:")) as shop:
        shop.executescript(SHOP)
        written.write_bytes(shop.serialize())
    written.replace(path)  # in one step: another process may be reading the file


# %% 1. Tell the model what it needs to know
#
# The schema says what can be asked. Verified queries show how this company counts, which
# no schema says. They are the part of the prompt that is most worth your time.


def read_schema(path: Path) -> list[str]:
    """Return the definition of each table in the file, one line per table."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
        found = database.execute("SELECT sql FROM sqlite_master WHERE type = 'table'").fetchall()
    return [" ".join(sql.split()) for (sql,) in found]


def write_sql(client: OpenAI, schema: list[str], question: str) -> str:
    """Ask the model for a query, and strip the code block it may put around it.

    In Langfuse: open a trace and select `write-sql`. Its input is all the model knew.
    """
    told = "Write one SQLite query that answers the question, and nothing else.\nThe tables:"
    examples = [f"{sql} -- {asked}" for asked, sql in VERIFIED.items()]
    prompt = [told, *schema, "Verified queries, each with its question:", *examples]
    response = client.chat.completions.create(
        name="write-sql",
        model=os.environ["OPENAI_MODEL"],
        messages=[
            {"role": "system", "content": "\n".join(prompt)},
            {"role": "user", "content": question},
        ],
        max_completion_tokens=500,
    )
    reply = response.choices[0].message.content or ""
    block = re.search(r"```(?:sql\w*)?\s*(.*?)\s*```", reply, re.DOTALL | re.IGNORECASE)
    return block[1] if block else reply


# %% 2. Run its query as if an attacker had written it
#
# Whoever types the question steers the query. A read-only file is not enough: ATTACH opens
# another file, and a query can run forever or fill the memory. So a query may only read:
# one statement, for two seconds, with few rows and short values.

MAX_SECONDS = 2.0
MAX_ROWS = 20
LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 10_000,  # bytes of a value, and of the query
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 100,  # the deadline cannot stop one slow LIKE
}
READS = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}


def open_guarded(path: Path, seconds: float) -> sqlite3.Connection:
    """Return a connection that can only read, and only for this many seconds."""
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

    SQLite answers `not authorized` to what is not in READS, and `interrupted` when the time
    is up.
    """
    with closing(open_guarded(path, seconds)) as connection:
        cursor = connection.execute(sql)
        if cursor.description is None:
            raise sqlite3.ProgrammingError("this is not a query")
        return cursor.fetchmany(MAX_ROWS)


@observe(name="run-sql", as_type="tool", capture_input=False)
def run_sql(path: Path, sql: str) -> Rows:
    """Run a query where it can do no harm, and score whether it ran.

    In Langfuse: filter Tracing by Status ERROR (on the local page: Level), open a trace and
    select `run-sql`. The input is the SQL, the status message is what SQLite said about it.
    """
    langfuse, success = get_client(), False
    langfuse.update_current_span(input=sql)
    try:
        rows = fetch_rows(path, sql)
        success = True
        return rows
    finally:
        # Not `score_current_trace`, which warns while tracing is off.
        langfuse.create_score(
            name="sql_execution_success",
            value=int(success),
            data_type="BOOLEAN",
            trace_id=langfuse.get_current_trace_id() or "",
        )


# %% 3. Ask the model once per question, and store the thumb
#
# The same question about the same schema needs the same query. The cache keeps the query and
# not its result, so a cached answer is as fresh as any other. A query that failed is dropped.

Cache = dict[tuple[str, ...], str]


class Answer(NamedTuple):
    """The rows that answer a question, or why there are none; and the trace, for the thumb."""

    trace_id: str
    rows: Rows
    error: str = ""


def cache_key(question: str, schema: list[str]) -> tuple[str, ...]:
    """Return one key for all spellings of a question: `"How  many?"` and `"how many"`."""
    return (" ".join(question.casefold().split()).rstrip(" ?!."), *schema)


@observe(name="answer-question", as_type="chain", capture_input=False, capture_output=False)
def answer_question(client: OpenAI, path: Path, cache: Cache, team: str, question: str) -> Answer:
    """Answer a question from the database; SQL that fails leaves an ERROR and no rows.

    In Langfuse: the tags say which team asked, and whether the model or the cache had the
    SQL. Dashboards show the cost of each tag.
    """
    langfuse, schema = get_client(), read_schema(path)
    langfuse.update_current_span(input=question)
    trace_id = langfuse.get_current_trace_id() or ""  # empty while tracing is off
    key = cache_key(question, schema)
    facts = {"team": team, "database": path.name, "cached": str(key in cache).lower()}
    sizes = {"table_count": str(len(schema)), "query_length": str(len(question))}
    tags = [f"team:{team}", "sql:cache" if key in cache else "sql:model"]
    with propagate_attributes(tags=tags, metadata=facts | sizes):
        sql = cache.pop(key, None) or write_sql(client, schema, question)
        langfuse.update_current_span(output={"sql": sql}, metadata={"sql_length": len(sql)})
        try:
            rows = run_sql(path, sql)
        except (sqlite3.Error, UnicodeError) as error:
            langfuse.update_current_span(level="ERROR", status_message=str(error))
            return Answer(trace_id, [], str(error))
        langfuse.update_current_span(output={"sql": sql, "rows": rows})
    cache[key] = sql
    return Answer(trace_id, rows)


def rate_answer(trace_id: str, liked: bool) -> None:
    """Store a thumb, up or down; a second thumb replaces the first.

    In Langfuse: open the question about March. `sql_execution_success` is true and
    `user-thumbs` is false: the SQL ran and answered a different question. No error shows that.
    """
    get_client().create_score(
        name="user-thumbs",
        value=int(liked),
        data_type="BOOLEAN",
        trace_id=trace_id,
        score_id=f"{trace_id}-user-thumbs",
    )


def ask_all(client: OpenAI, path: Path) -> Iterator[tuple[str, ...]]:
    """Answer ASKED, and rate each answer; yield trace id, team, question, answer and thumb."""
    cache = Cache()
    for team, question, known in ASKED:
        trace_id, rows, error = answer_question(client, path, cache, team, question)
        answer = f"failed: {error}" if error else str(rows[0][0] if rows else "no rows")
        liked = bool(rows) and known in rows[0]
        rate_answer(trace_id, liked)
        yield trace_id, team, question, answer, "up" if liked else "down"


# %% 4. Report what each team costs, what the cache saves and what fails
#
# The sums and the SQL are read back from Langfuse, so that others can check the report.


def cost_by_tag(observations: list[ObservationV2]) -> list[tuple[str, int, int, str]]:
    """Return the questions, model calls and cost in USD of each tag.

    A single call without a price makes the cost unknown, which is not $0.
    """
    rows = []
    for tag in sorted({tag for row in observations for tag in row.tags or []}):
        tagged = [row for row in observations if tag in (row.tags or [])]
        calls = [row for row in tagged if row.type == "GENERATION"]
        costs = [(call.cost_details or {}).get("total") for call in calls]
        usd = "unknown" if None in costs else console.usd_text(sum(filter(None, costs)))
        rows.append((tag, sum(bool(row.is_root_observation) for row in tagged), len(calls), usd))
    return rows


def main() -> None:
    """Answer the questions of three teams; then report what they cost and what failed."""
    connect()
    langfuse = Langfuse()
    database = (TOP / read_settings()["LOCAL_LANGFUSE_DB"].value).with_name("orders.db")
    create_orders(database)
    console.show_section(f"What three teams ask {database.name}")
    answered = list(ask_all(OpenAI(timeout=60), database))
    columns = ("team", "question", "answer", "thumb")
    console.show_table(columns, [row[1:] for row in answered])
    langfuse.flush()  # send what is waiting before anyone adds it up
    sent = [trace_id for trace_id, *_ in answered if sent_count(trace_id)]
    stored = [row for trace_id in sent for row in read_trace(langfuse, trace_id)]
    failed = [row for row in stored if row.name == "run-sql" and row.level == "ERROR"]
    if stored:
        console.show_section("What each team costs, and what the cache saves")
        console.show_table(("tag", "questions", "model calls", "USD"), cost_by_tag(stored))
        console.show_section(f"The SQL that failed: {len(failed)} of {len(sent)}")
    for row in failed:
        console.show_answer(str(row.status_message), str(row.input))
    console.show_trace(str(failed[0].trace_id) if failed else answered[0][0])


if __name__ == "__main__":
    main()
