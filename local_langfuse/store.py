"""The SQLite file: its schema, and how it is written.

Times are whole microseconds since 1970, and costs are USD. An unknown cost is NULL; only
the Metrics API counts it as 0, as Langfuse does. If Langfuse shows an absent text as "", it
is "" here too. Structured values are stored as JSON, for SQLite's JSON functions.
"""

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from local_langfuse import CannotStart
from local_langfuse.aggregates import Histogram, Quantile
from local_langfuse.wire import now_us, to_json

Row = dict[str, Any]
BUSY_SECONDS = 5
APPLICATION_ID = 0x1F11A  # in the file's header: tells our files from other programs'

# The entry with index n takes the schema from version n to the next. Never edit an entry
# that was released; append one.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE observations (
            trace_id TEXT NOT NULL, id TEXT NOT NULL, parent_id TEXT, is_root INTEGER NOT NULL,
            type TEXT NOT NULL, name TEXT NOT NULL, trace_name TEXT,
            start_us INTEGER NOT NULL, end_us INTEGER, completion_start_us INTEGER,
            level TEXT NOT NULL, status_message TEXT NOT NULL, version TEXT NOT NULL,
            environment TEXT NOT NULL, release TEXT NOT NULL,
            user_id TEXT NOT NULL, session_id TEXT NOT NULL, tags TEXT NOT NULL,
            metadata TEXT NOT NULL, input TEXT, output TEXT,
            model TEXT NOT NULL, model_id TEXT NOT NULL, model_parameters TEXT NOT NULL,
            usage_details TEXT NOT NULL, cost_details TEXT NOT NULL,
            input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
            total_tokens INTEGER NOT NULL,
            input_cost REAL, output_cost REAL, total_cost REAL,
            prompt_name TEXT NOT NULL, prompt_version INTEGER,
            experiment TEXT, experiment_id TEXT,
            created_us INTEGER NOT NULL, updated_us INTEGER NOT NULL,
            start_ms INTEGER AS (start_us / 1000) STORED,
            latency_ms INTEGER AS (end_us / 1000 - start_us / 1000) STORED,
            first_token_ms INTEGER AS (completion_start_us / 1000 - start_us / 1000) STORED,
            UNIQUE (trace_id, id))""",
        "CREATE INDEX observations_by_time ON observations (start_ms, trace_id, id)",
        "CREATE INDEX observations_by_trace ON observations (trace_id, start_ms, id)",
        "CREATE INDEX observations_by_name ON observations (name, start_ms, trace_id, id)",
        "CREATE INDEX observations_by_user ON observations (user_id, start_ms, trace_id, id)",
        "CREATE INDEX observations_by_session ON observations (session_id, start_ms, trace_id, id)",
        "CREATE INDEX observations_by_experiment ON observations (experiment_id)",
        """CREATE TABLE scores (
            id TEXT PRIMARY KEY, name TEXT NOT NULL, data_type TEXT NOT NULL,
            value REAL, string_value TEXT,
            trace_id TEXT, observation_id TEXT, session_id TEXT, experiment_id TEXT,
            comment TEXT, metadata TEXT, environment TEXT NOT NULL, source TEXT NOT NULL,
            config_id TEXT, queue_id TEXT, timestamp_us INTEGER NOT NULL,
            created_us INTEGER NOT NULL, updated_us INTEGER NOT NULL,
            timestamp_ms INTEGER AS (timestamp_us / 1000) STORED)""",
        "CREATE INDEX scores_by_time ON scores (timestamp_ms, id)",
        "CREATE INDEX scores_by_trace ON scores (trace_id, timestamp_ms, id)",
        "CREATE INDEX scores_by_name ON scores (name, timestamp_ms, id)",
        """CREATE TABLE models (
            id TEXT PRIMARY KEY, name TEXT NOT NULL, match_pattern TEXT NOT NULL,
            unit TEXT NOT NULL, prices TEXT NOT NULL, start_us INTEGER,
            tokenizer_id TEXT, tokenizer_config TEXT NOT NULL, created_us INTEGER NOT NULL)""",
    ),
    (
        """CREATE TABLE prompts (
            id TEXT PRIMARY KEY, name TEXT NOT NULL, version INTEGER NOT NULL, type TEXT NOT NULL,
            prompt TEXT NOT NULL, config TEXT NOT NULL, tags TEXT NOT NULL, commit_message TEXT,
            created_us INTEGER NOT NULL, updated_us INTEGER NOT NULL, UNIQUE (name, version))""",
        # A label is on one version of a prompt at a time: setting it moves it.
        """CREATE TABLE prompt_labels (
            name TEXT NOT NULL, label TEXT NOT NULL, version INTEGER NOT NULL,
            PRIMARY KEY (name, label))""",
        """CREATE VIEW prompt_versions AS SELECT *,
            (SELECT json_group_array(label) FROM prompt_labels
             WHERE name = prompts.name AND version = prompts.version) AS labels FROM prompts""",
        """CREATE TABLE datasets (
            id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, description TEXT, metadata TEXT,
            created_us INTEGER NOT NULL, updated_us INTEGER NOT NULL)""",
        """CREATE TABLE dataset_items (
            id TEXT PRIMARY KEY, dataset_id TEXT NOT NULL, status TEXT,
            input TEXT, expected_output TEXT, metadata TEXT,
            source_trace_id TEXT, source_observation_id TEXT,
            created_us INTEGER NOT NULL, updated_us INTEGER NOT NULL)""",
        "CREATE INDEX dataset_items_by_dataset ON dataset_items (dataset_id, created_us, id)",
        "CREATE INDEX scores_by_experiment ON scores (experiment_id)",
        # Every span of an experiment carries its attributes; its items are the root spans.
        """CREATE VIEW experiment_items AS SELECT trace_id, id, start_us, end_us, start_ms, level,
            environment, input, output, metadata, experiment_id,
            coalesce(CAST(json_extract(experiment, '$.name') AS TEXT), '') AS experiment_name,
            CAST(json_extract(experiment, '$."dataset.id"') AS TEXT) AS dataset_id,
            CAST(json_extract(experiment, '$."item.id"') AS TEXT) AS item_id,
            json_extract(experiment, '$."item.version"') AS item_version,
            json_extract(experiment, '$."item.expected_output"') AS expected_output,
            json_extract(experiment, '$."item.metadata"') AS item_metadata,
            json_extract(experiment, '$.metadata') AS experiment_metadata,
            CAST(json_extract(experiment, '$.description') AS TEXT) AS description
            FROM observations WHERE experiment_id IS NOT NULL
            AND id = json_extract(experiment, '$."item.root_observation_id"')""",
    ),
    (
        # For the sums of a few traces among many, written as the Metrics API groups by trace.
        """CREATE INDEX observations_by_trace_sums ON observations
            (nullif(trace_id, ''), level, total_tokens, total_cost, start_ms)""",
    ),
)


class Store:
    """One connection to the file. Several processes may have one at the same time."""

    def __init__(self, path: Path) -> None:
        """Open or create the file; `CannotStart` says why it cannot be used."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as error:
            raise CannotStart(_unusable(path, error)) from error
        try:
            self._prepare(path)
        except sqlite3.Error as error:
            self.close()
            raise CannotStart(_unusable(path, error)) from error
        except CannotStart:
            self.close()
            raise

    def _prepare(self, path: Path) -> None:
        self._db.row_factory = sqlite3.Row
        for name, aggregate in (("quantile", Quantile), ("histogram", Histogram)):
            # typeshed only knows aggregates with one argument
            self._db.create_aggregate(name, 2, aggregate)  # type: ignore[arg-type]
        with self.writing():
            self._migrate(path)
        self._use_wal()
        # With WAL, what was answered survives if the process dies. A power cut could lose
        # the last answers, but never the file.
        self._db.execute("PRAGMA synchronous = NORMAL")

    def _use_wal(self) -> None:
        # Switching a new file to WAL needs exclusive access, and SQLite does not wait for it.
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                is_busy = error.sqlite_errorcode == sqlite3.SQLITE_BUSY
                if not is_busy or time.monotonic() > deadline:
                    raise
                threading.Event().wait(0.02)
            else:
                return

    def _migrate(self, path: Path) -> None:
        version, tables, owner = self._db.execute(
            "SELECT (SELECT user_version FROM pragma_user_version),"
            " (SELECT count(*) FROM sqlite_schema),"
            " (SELECT application_id FROM pragma_application_id)"
        ).fetchone()
        if tables and owner != APPLICATION_ID:
            raise CannotStart(
                f"{path} is another program's database: choose another file with --db or "
                "LOCAL_LANGFUSE_DB"
            )
        if version > len(MIGRATIONS):
            raise CannotStart(
                f"{path} was written by a newer version of these examples (schema {version}, "
                f"this one knows {len(MIGRATIONS)}): update them, or choose another file with "
                "--db or LOCAL_LANGFUSE_DB"
            )
        for statement in (s for step in MIGRATIONS[version:] for s in step):
            self._db.execute(statement)
        # PRAGMA takes no bound parameters; both numbers are our own constants.
        self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        self._db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write all or nothing, one process at a time."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # a full disk may have rolled back already
                self._db.execute("ROLLBACK")
            raise

    def rows(self, sql: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[sqlite3.Row]:
        """Return the rows of a query; every value from outside is a bound parameter."""
        return self._db.execute(sql, values).fetchall()

    def put_observations(self, observations: Iterable[Row]) -> None:
        """Store observations; replace those that exist already (same trace, same id)."""
        with self.writing():
            self.upsert("observations", observations, ("trace_id", "id"))

    def put_scores(self, scores: Iterable[Row]) -> None:
        """Store scores; an existing id gets the new values and keeps its first timestamp."""
        optional = ("comment", "metadata", "config_id", "queue_id")
        with self.writing():
            self.upsert("scores", scores, ("id",), kept=("timestamp_us",), optional=optional)

    def upsert(
        self,
        table: str,
        rows: Iterable[Row],
        keys: Sequence[str],
        *,
        kept: Sequence[str] = (),
        optional: Sequence[str] = (),
    ) -> None:
        """Insert rows, or update those with the same keys; an optional NULL changes nothing."""
        now = now_us()
        stamped = [{**row, "created_us": now, "updated_us": now} for row in rows]
        if stamped:
            changed = {c: f"excluded.{c}" for c in stamped[0] if c not in (*keys, *kept)}
            changed |= {c: f"coalesce(excluded.{c}, {c})" for c in optional}
            del changed["created_us"]
            update = ", ".join(f"{column} = {value}" for column, value in changed.items())
            self.insert(table, stamped, f"ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {update}")

    def delete(self, table: str, column: str, values: Sequence[str]) -> int:
        """Delete the rows with one of these values in a column; return how many there were."""
        sql = f"DELETE FROM {table} WHERE {column} IN (SELECT value FROM json_each(?))"  # noqa: S608
        return self._db.execute(sql, (to_json(values),)).rowcount

    def insert(self, table: str, rows: list[Row], on_conflict: str = "") -> None:
        """Insert rows; table, columns and `on_conflict` come from our own code only."""
        columns = ", ".join(rows[0])
        values = ", ".join(f":{column}" for column in rows[0])
        self._db.executemany(
            f"INSERT INTO {table} ({columns}) VALUES ({values}) {on_conflict}",  # noqa: S608
            rows,
        )

    def close(self) -> None:
        """Close the connection."""
        self._db.close()


def _unusable(path: Path, error: Exception) -> str:
    return f"cannot use {path} ({error}): choose another file with --db or LOCAL_LANGFUSE_DB"
