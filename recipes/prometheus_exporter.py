"""Watch tokens, cost, latency, errors and scores from Prometheus.

Langfuse knows what each call has cost, and Prometheus is where your alerts are. What stands
between them must count each call once, also one that is stored late, also after a crash;
and a cost that nobody knows is not 0.

Run it:

    python -m recipes.prometheus_exporter
    python -m recipes.prometheus_exporter --once

The second prints the numbers and ends. Prometheus reads the first with these lines:

    scrape_configs:
      - job_name: langfuse
        static_configs: [{targets: ["127.0.0.1:9464"]}]

Two questions to ask there: USD an hour by model, and the mean of each score over a day.

    sum by (model) (rate(langfuse_cost_usd_total[5m])) * 3600
    delta(langfuse_score_sum[1d]) / increase(langfuse_scores_total[1d])

Try next: kill it with `kill -9`, run lesson 4, start it again, and look for `shop-topics` in
`langfuse_calls_without_cost_total`: as many as the lesson printed, and no more.
"""

import argparse
import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
from langfuse import Langfuse
from langfuse.api import ObservationV2
from langfuse.api.core import ApiError
from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from pydantic import BaseModel, ValidationError

from common.client import connect, tracing_is_on
from common.console import Arguments, fail, show_line
from common.settings import TOP, read_settings

HOST = "127.0.0.1"
# Upper bounds in seconds. With other ones a new state file must begin.
BUCKETS = ["0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "30", "60", "120", "+Inf"]
MAX_NAMES = 100  # of models, of kinds of tokens, of scores: Prometheus keeps a series for each
LONGEST = timedelta(days=1)  # an observation that ran for longer is not found
FIRST_ROUND = timedelta(days=1)  # how far back it reads, with no state to go on from
COUNTERS = {
    "langfuse_calls": (["type", "model"], "Observations that ended; those of a model name it."),
    "langfuse_errors": (["type", "model"], "Observations that ended with level ERROR."),
    "langfuse_tokens": (["model", "direction"], "Tokens by usage bucket, such as input."),
    "langfuse_cost_usd": (["model"], "Cost in USD of the calls that have a price."),
    "langfuse_calls_without_cost": (["model"], "Calls whose cost is unknown, which is not 0."),
    "langfuse_scores": (["name"], "Scores that are a number, or yes (1) or no (0)."),
}
HISTOGRAMS = {
    "langfuse_latency_seconds": (["type", "model"], "From the start to the end."),
    "langfuse_time_to_first_token_seconds": (["model"], "From the start to the first token."),
}


# %% 1. Keep the position and the numbers in one file
#
# A counter that falls back to 0, or a position one round behind its numbers, is a wrong
# number that nobody notices. So both are written together, and under another name first:
# whenever the process is killed, the file holds all of one round and nothing of the next.


class CannotRunError(ValueError):
    """What makes it impossible to go on, and what to do: one line."""


class State(BaseModel, extra="forbid"):
    """All that must survive a restart. Times are whole Unix seconds."""

    buckets: list[str]  # what the histograms are counted with
    since: int  # the next round reads what ended, or was scored, from here on
    seen: dict[str, int] = {}  # the observations from here on that are counted, and their end
    scored: dict[str, tuple[int, Decimal]] = {}  # the same of scores: their time and value
    project: str = ""  # whose numbers these are, once there are any
    names: dict[str, set[str]] = {}  # the label values in use, by label
    numbers: dict[str, dict[str, Decimal]] = {}  # by metric, then by label values as JSON
    durations: dict[str, dict[str, list[Decimal]]] = {}  # one number a bucket, then the sum


def load_state(path: Path) -> State:
    """Return what the file holds; without a file, a state with nothing counted yet.

    Raises CannotRunError for a file that is damaged, or that another version wrote.
    """
    if not path.exists():
        return State(buckets=BUCKETS, since=int(time.time() - FIRST_ROUND.total_seconds()))
    try:
        state = State.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise CannotRunError(
            f"{path} is damaged, or written by another version: restore it, or choose another "
            "file with --state."
        ) from error
    if state.buckets != BUCKETS:
        raise CannotRunError(f"{path} was counted with other BUCKETS: choose another with --state.")
    return state


def save_state(path: Path, state: State) -> None:
    """Replace the file by this state, in one step; raises OSError where that is not possible."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(state.model_dump_json())
        file.flush()
        os.fsync(file.fileno())  # all on the disk before it gets its name
    unfinished.replace(path)


# %% 2. Read what has ended
#
# An observation reaches Langfuse after its end, not after its start. Asking by end time
# finds a call that took an hour, and leaves out what still runs. Some are stored late, so
# each round reads the last hour again, and passes over what it has seen.


def read_pages(get_page: Callable[..., Any], **wanted: Any) -> Iterator[Any]:
    """Yield all rows that a paged call of the API answers, until there is no cursor left."""
    cursor = None
    while True:
        page = get_page(cursor=cursor, **wanted)
        yield from page.data
        cursor = page.meta.cursor
        if cursor is None:
            return


def read_new(langfuse: Langfuse, since: int) -> Iterator[Any]:
    """Yield the observations that ended at `since` (Unix seconds) or later, then the scores.

    In Langfuse: the table of observations with a filter on end time; the table of scores.
    Scores that are a category or a text have no mean, and are left out.
    """
    start = datetime.fromtimestamp(since, UTC)
    bounds = {"endTime": start, "startTime": start - LONGEST}
    conditions = [
        {"type": "datetime", "column": column, "operator": ">=", "value": bound.isoformat()}
        for column, bound in bounds.items()
    ]
    fields, wanted = "core,basic,model,usage,metrics", json.dumps(conditions)
    get_many = langfuse.api.observations.get_many
    yield from read_pages(get_many, filter=wanted, fields=fields, limit=1000)
    numbers = {"data_type": "NUMERIC,BOOLEAN", "from_timestamp": start}
    yield from read_pages(langfuse.api.scores.get_many, **numbers, limit=100)


# %% 3. Count each of them once
#
# Amounts are Decimal, so that a million small costs add up to what they are. Names come
# from traces: whoever sends one can invent a thousand. Beyond MAX_NAMES they are `other`.


def label(state: State, kind: str, text: str) -> str:
    """Return a name as a label value: at most 100 characters, each of them printable."""
    name = "".join(character if character.isprintable() else "?" for character in text[:100])
    known = state.names.setdefault(kind, set())
    if name not in known and len(known) >= MAX_NAMES:
        return "other"
    known.add(name)
    return name


def add(state: State, metric: str, labels: list[str], amount: Decimal | int = 1) -> None:
    """Add an amount to the number of a metric that has these label values."""
    series = state.numbers.setdefault(metric, {})
    key = json.dumps(labels)
    series[key] = series.get(key, Decimal(0)) + amount


def add_duration(state: State, metric: str, labels: list[str], seconds: float) -> None:
    """Enter seconds into a histogram: each bucket counts what is not above its bound."""
    series = state.durations.setdefault(metric, {})
    key = json.dumps(labels)
    counts = [*(Decimal(seconds <= float(bound)) for bound in BUCKETS), Decimal(str(seconds))]
    before = series.get(key, [Decimal(0)] * len(counts))
    series[key] = [old + new for old, new in zip(before, counts, strict=True)]


def count_observation(state: State, node: ObservationV2) -> None:
    """Enter an observation that has ended, unless it was entered before.

    A call that failed before it used a token has cost nothing; any other call of a model
    without a stored cost is one whose cost is unknown.
    """
    key = f"{node.trace_id}/{node.id}"
    if key in state.seen or node.end_time is None:
        return
    state.seen[key] = int(node.end_time.timestamp())
    model = label(state, "model", node.model or "")
    where = [node.type.lower(), model]
    add(state, "langfuse_calls", where)
    add(state, "langfuse_errors", where, int(node.level == "ERROR"))
    add_duration(state, "langfuse_latency_seconds", where, node.latency or 0)
    if node.time_to_first_token is not None:
        waited = node.time_to_first_token
        add_duration(state, "langfuse_time_to_first_token_seconds", [model], waited)
    usage, cost = node.usage_details or {}, (node.cost_details or {}).get("total")
    for bucket, tokens in usage.items():
        if bucket != "total" or len(usage) == 1:  # beside its parts it would count them twice
            add(state, "langfuse_tokens", [model, label(state, "direction", bucket)], tokens)
    if cost is not None:
        add(state, "langfuse_cost_usd", [model], Decimal(str(cost)))
    elif node.type in ("GENERATION", "EMBEDDING") and (usage or node.level != "ERROR"):
        add(state, "langfuse_calls_without_cost", [model])


def count_score(state: State, score: Any) -> None:
    """Enter a score; one that was changed since then replaces its old value."""
    name, value = label(state, "name", score.name), Decimal(str(float(score.value)))
    _, before = state.scored.get(score.id, (0, Decimal(0)))
    add(state, "langfuse_scores", [name], int(score.id not in state.scored))
    add(state, "langfuse_score_sum", [name], value - before)
    state.scored[score.id] = int(score.timestamp.timestamp()), value


# %% 4. Take a round
#
# A round that fails half-way must leave nothing behind, so it counts in a copy. What ended
# before the window is forgotten, and never asked for again. That is the limit: what is
# stored later than `--lateness` after its end is not counted.


def take_round(langfuse: Langfuse, state: State, lateness: float) -> State:
    """Return a state in which all that is new is counted; `lateness` is in seconds.

    Raises CannotRunError when the state counts another project than the keys open.
    """
    began, new = time.time(), state.model_copy(deep=True)
    for row in read_new(langfuse, state.since):
        new.project = new.project or row.project_id
        if new.project != row.project_id:
            raise CannotRunError(
                f"The state counts project {new.project}, and the keys open {row.project_id}: "
                "choose another file with --state."
            )
        (count_observation if isinstance(row, ObservationV2) else count_score)(new, row)
    # Never back, also when --lateness has grown: what ended before is forgotten.
    new.since = max(state.since, int(began - lateness))
    new.seen = {key: ended for key, ended in new.seen.items() if ended >= new.since}
    new.scored = {key: score for key, score in new.scored.items() if score[0] >= new.since}
    return new


# %% 5. Show it to Prometheus
#
# What is shown is what was saved. While Langfuse is down the last numbers stay, and two
# metrics of the exporter itself say that they are old.


def metrics_of(state: State) -> list[Metric]:
    """Return the numbers of a state as prometheus_client writes them out."""
    found: list[Metric] = []
    for name, (labels, text) in COUNTERS.items():
        counter = CounterMetricFamily(name, text, labels=labels)
        for key, number in state.numbers.get(name, {}).items():
            counter.add_metric(json.loads(key), float(number))
        found.append(counter)
    for name, (labels, text) in HISTOGRAMS.items():
        histogram = HistogramMetricFamily(name, text, labels=labels)
        for key, (*counts, seconds) in state.durations.get(name, {}).items():
            buckets = list(zip(BUCKETS, map(float, counts), strict=True))
            histogram.add_metric(json.loads(key), buckets, float(seconds))
        found.append(histogram)
    total = GaugeMetricFamily("langfuse_score_sum", "Sum of the scores.", labels=["name"])
    mean = GaugeMetricFamily("langfuse_score_mean", "Mean of all scores so far.", labels=["name"])
    for key, number in state.numbers.get("langfuse_score_sum", {}).items():
        total.add_metric(json.loads(key), float(number))
        mean.add_metric(json.loads(key), float(number / state.numbers["langfuse_scores"][key]))
    return [*found, total, mean]


class Exporter(Collector):
    """Takes rounds, and shows the last one that was saved."""

    def __init__(self, path: Path) -> None:
        """Begin with what the file holds; raises CannotRunError where it cannot be used."""
        self.path, self.state = path, load_state(path)
        self.shown, self.is_up, self.failed = metrics_of(self.state), False, 0

    def collect(self) -> Iterable[Metric]:
        """Return what Prometheus reads at this moment."""
        up = GaugeMetricFamily("langfuse_exporter_up", "1 if the last round worked.", self.is_up)
        name, text = "langfuse_exporter_failed_rounds", "Rounds that failed since the start."
        return [*self.shown, up, CounterMetricFamily(name, text, self.failed)]

    def try_round(self, langfuse: Langfuse, lateness: float) -> str:
        """Take a round, save it, then show it; return why that failed, or an empty text."""
        try:
            state = take_round(langfuse, self.state, lateness)
            save_state(self.path, state)
        except (httpx.HTTPError, ApiError, OSError) as error:
            self.is_up, self.failed = False, self.failed + 1
            said = (
                f"Langfuse answered {error.status_code}" if isinstance(error, ApiError) else error
            )
            return f"Nothing is counted in this round: {said}"
        self.state, self.shown, self.is_up = state, metrics_of(state), True
        return ""


def serve(registry: CollectorRegistry, port: int) -> str:
    """Serve the metrics to this machine alone, from a thread, and return their address."""
    try:
        server, _ = start_http_server(port, HOST, registry)
    except (OSError, OverflowError) as error:
        raise CannotRunError(
            f"Cannot listen on port {port} ({error}): choose another with --port."
        ) from error
    return f"http://{HOST}:{server.server_port}/metrics"


def seconds(text: str) -> float:
    """Return a number of seconds above 0; argparse names this function in its message."""
    if not 0 < float(text) < 1e9:
        raise ValueError(text)
    return float(text)


def read_options() -> argparse.Namespace:
    """Return the options of the command line."""
    add_option = (parser := Arguments(prog="python -m recipes.prometheus_exporter")).add_argument
    add_option("--once", action="store_true", help="take one round, print the numbers, and end")
    add_option("--port", type=int, default=9464, help="default: %(default)s; 0 takes a free one")
    add_option("--every", type=seconds, default=15, help="seconds between rounds (%(default)s)")
    late = "how many seconds after its end a call that is stored late still counts (%(default)s)"
    add_option("--lateness", type=seconds, default=3600, help=late)
    add_option("--state", type=Path, help="default: prometheus.json beside the local database")
    return parser.parse_args()


def main() -> None:
    """Connect, go on from what was counted, and take one round after another."""
    options, said, registry = read_options(), io.StringIO(), CollectorRegistry()
    with redirect_stdout(said):
        langfuse = connect(asks_model=False)
    for line in said.getvalue().splitlines():
        show_line(f"# {line}" if options.once else line)  # to Prometheus a comment
    if not tracing_is_on():
        fail("Tracing is off, and nothing can be read: unset LANGFUSE_TRACING_ENABLED.", 2)
    beside = TOP / read_settings()["LOCAL_LANGFUSE_DB"].value
    try:
        exporter = Exporter(options.state or beside.with_name("prometheus.json"))
        registry.register(exporter)
        if not options.once:
            show_line(f"Metrics are on {serve(registry, options.port)} until Ctrl-C.")
        while True:
            problem = exporter.try_round(langfuse, options.lateness)
            if options.once:
                show_line(generate_latest(registry).decode().rstrip())
                return fail(problem, 1) if problem else None
            if problem:
                show_line(problem, "red")
            threading.Event().wait(options.every)
    except CannotRunError as error:
        fail(str(error), 2)


if __name__ == "__main__":
    main()
