"""Watch tokens, cost, latency, errors and scores from Prometheus.

Langfuse knows what each call cost, but your alerts are in Prometheus. This exporter counts each
call once, even one that is stored late, even after a crash, and never an unknown cost as 0.

Run it:

    python -m recipes.prometheus_exporter --once
    python -m recipes.prometheus_exporter

The first prints the numbers and ends. The second serves them: give Prometheus the target
127.0.0.1:9464, and ask it for USD per hour by model, or the mean of each score over a day:

    sum by (model) (rate(langfuse_cost_usd_total[5m])) * 3600
    delta(langfuse_score_sum[1d]) / increase(langfuse_scores_total[1d])

Try next: kill it with `kill -9`, run lesson 4, start it again, and look for `shop-topics` in
`langfuse_calls_without_cost_total`: it has grown by the number that the lesson printed.
"""

import io
import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, redirect_stdout
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from langfuse import Langfuse
from langfuse.api import ObservationV2
from langfuse.api.core import ApiError
from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import BaseModel

from common.client import connect, tracing_is_on
from common.console import fail, show_line
from common.settings import TOP, choose_destination, read_settings
from recipes import Arguments

HOST = "127.0.0.1"
LATENESS = timedelta(hours=1)  # a call that is stored later than this after its end is missed
DAY = timedelta(days=1)  # how far back the first round reads, and the longest a call may take
# Upper bounds in seconds; if you change them, the counting must start again.
BUCKETS = ["0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "30", "60", "120", "+Inf"]
METRICS = {
    "langfuse_calls": ("counter", "Observations that ended, with the model if they called one."),
    "langfuse_errors": ("counter", "Observations that ended with level ERROR."),
    "langfuse_tokens": ("counter", "Tokens by direction, such as input or output."),
    "langfuse_cost_usd": ("counter", "Cost in USD of the calls whose cost is known."),
    "langfuse_calls_without_cost": ("counter", "Calls whose cost is unknown, which is not 0."),
    "langfuse_latency_seconds": ("histogram", "From the start to the end."),
    "langfuse_time_to_first_token_seconds": ("histogram", "From the start to the first token."),
    "langfuse_scores": ("counter", "Scores that are a number, or true (1) or false (0)."),
    "langfuse_score_sum": ("gauge", "Sum of these scores; divide it by their count for the mean."),
}


# %% 1. Keep the position and the numbers in one file
#
# A counter that falls back to 0, or a position one round behind its numbers, is an error that
# nobody notices. So both are written together, and under a temporary name first: whenever the
# process is killed, the file holds one whole round and nothing of the next.


class State(BaseModel, extra="forbid"):
    """Everything that must survive a restart."""

    since: datetime  # the next round reads what ended, or was scored, at this time or later
    ended: dict[str, datetime] = {}  # when each counted observation of that time ended
    scored: dict[str, tuple[datetime, Decimal]] = {}  # time and value of each counted score
    numbers: dict[str, dict[str, Decimal]] = {}  # by metric, then by sample and labels as JSON
    buckets: list[str] = BUCKETS  # what the histograms were counted with


def state_path() -> Path:
    """Return the file for the numbers: each local database and each project has its own."""
    settings = read_settings()
    db = TOP / settings["LOCAL_LANGFUSE_DB"].value
    mode, _, url = choose_destination(settings)
    project = f"{urlsplit(url).netloc}-{settings['LANGFUSE_PUBLIC_KEY'].value}"
    name = db.name if mode == "local" else re.sub("[^A-Za-z0-9.-]", "_", project)
    return db.with_name(f"prometheus-{name}.json")


def load_state(path: Path) -> State:
    """Return what the file holds, or an empty state; raises ValueError if it is damaged."""
    if not path.exists():
        return State(since=datetime.now(UTC) - DAY)
    state = State.model_validate_json(path.read_bytes())
    if state.buckets != BUCKETS:
        raise ValueError(f"other buckets: {state.buckets}")
    return state


def save_state(path: Path, state: State) -> None:
    """Replace the file with this state in one step; raises OSError if that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(state.model_dump_json())
        file.flush()
        os.fsync(file.fileno())  # all of it is on the disk before it gets its final name
    unfinished.replace(path)


# %% 2. Read what has ended
#
# An observation reaches Langfuse after it has ended. Asking by end time finds a call that took
# an hour, and leaves out what is still running. Some observations are stored late, so each
# round reads the last hour again and skips what is already counted.


def read_pages(get_page: Callable[..., Any], **wanted: Any) -> Iterator[Any]:
    """Yield the rows of all pages of a list, until there is no cursor left."""
    cursor = None
    while True:
        page = get_page(cursor=cursor, **wanted)
        yield from page.data
        if not (cursor := page.meta.cursor):
            return


def read_observations(langfuse: Langfuse, since: datetime) -> Iterator[ObservationV2]:
    """Return the observations that ended at this time or later.

    In Langfuse (not on the local page): Tracing lists them once you clear the filter "Is Root
    Observation".
    """
    conditions = [
        {"type": "datetime", "column": column, "operator": ">=", "value": bound.isoformat()}
        # The bound on the start spares Langfuse a search through everything it has.
        for column, bound in (("endTime", since), ("startTime", since - DAY))
    ]
    get_many, fields = langfuse.api.observations.get_many, "core,basic,model,usage,metrics"
    return read_pages(get_many, filter=json.dumps(conditions), fields=fields, limit=1000)


# %% 3. Count each observation once
#
# Prometheus reads totals that only grow. They are kept under the names that Prometheus will
# see, and as Decimal, so that a million small costs add up exactly.


def add(
    state: State, name: str, labels: dict[str, str], amount: Decimal | int = 1, part: str = "_total"
) -> None:
    """Add an amount to the number of a metric for these labels."""
    series = state.numbers.setdefault(name, {})
    key = json.dumps([name + part, labels])
    series[key] = series.get(key, Decimal(0)) + amount


def add_duration(state: State, name: str, labels: dict[str, str], seconds: float) -> None:
    """Add a duration to a histogram; each bucket counts the durations up to its bound."""
    for bound in BUCKETS:
        add(state, name, labels | {"le": bound}, int(seconds <= float(bound)), "_bucket")
    add(state, name, labels, 1, "_count")
    add(state, name, labels, Decimal(str(seconds)), "_sum")


def count_observation(state: State, node: ObservationV2) -> None:
    """Count an observation that has ended, unless it is already counted.

    A call that failed before it used a token cost nothing. Any other model call without a
    stored cost is one of unknown cost.
    """
    key = f"{node.trace_id}/{node.id}"
    if key in state.ended or node.end_time is None:
        return
    state.ended[key] = node.end_time
    model = {"model": node.model or ""}
    labels = {"type": node.type.lower(), **model}
    add(state, "langfuse_calls", labels)
    add(state, "langfuse_errors", labels, int(node.level == "ERROR"))
    add_duration(state, "langfuse_latency_seconds", labels, node.latency or 0)
    if (waited := node.time_to_first_token) is not None:
        add_duration(state, "langfuse_time_to_first_token_seconds", model, waited)
    usage, cost = node.usage_details or {}, (node.cost_details or {}).get("total")
    for direction, tokens in usage.items():
        if direction != "total" or len(usage) == 1:  # next to its parts it would count twice
            add(state, "langfuse_tokens", {**model, "direction": direction}, tokens)
    if cost is not None:
        add(state, "langfuse_cost_usd", model, Decimal(str(cost)))
    elif node.type in ("GENERATION", "EMBEDDING") and (usage or node.level != "ERROR"):
        add(state, "langfuse_calls_without_cost", model)


def count_score(state: State, score: Any) -> None:
    """Count a score; if it has changed since, the new value replaces the old one."""
    name, value = {"name": score.name}, Decimal(str(float(score.value)))
    _, before = state.scored.get(score.id, (None, Decimal(0)))
    add(state, "langfuse_scores", name, int(score.id not in state.scored))
    add(state, "langfuse_score_sum", name, value - before, part="")
    state.scored[score.id] = score.timestamp, value


# %% 4. Take a round
#
# A round that fails half-way must leave nothing behind, so it counts in a copy. What ended
# more than LATENESS ago is never asked for again, so it need not be remembered.


def take_round(langfuse: Langfuse, state: State) -> State:
    """Return a copy of the state that counts everything new as well."""
    # Whole seconds: a finer time might be rounded on its way, and a call counted twice.
    began, new = datetime.now(UTC).replace(microsecond=0), state.model_copy(deep=True)
    for node in read_observations(langfuse, state.since):
        count_observation(new, node)
    wanted = {"data_type": "NUMERIC,BOOLEAN", "from_timestamp": state.since}
    for score in read_pages(langfuse.api.scores.get_many, **wanted, limit=100):
        count_score(new, score)
    new.since = max(state.since, began - LATENESS)  # never before what we remember
    new.ended = {key: end for key, end in new.ended.items() if end >= new.since}
    new.scored = {key: score for key, score in new.scored.items() if score[0] >= new.since}
    return new


# %% 5. Show it to Prometheus
#
# Only what was saved is shown. While Langfuse is down, the last numbers stay, and a metric of
# the exporter's own says that they are old.


class Exporter(Collector):
    """Takes rounds, and shows the last one that was saved."""

    def __init__(self, path: Path) -> None:
        """Start from what the file holds."""
        self.path, self.state, self.is_up = path, load_state(path), False

    def collect(self) -> Iterable[Metric]:
        """Return what Prometheus reads now."""
        numbers = self.state.numbers  # of one round, even if the next one ends meanwhile
        for name, (kind, text) in METRICS.items():
            metric = Metric(name, text, kind)
            for key, number in numbers.get(name, {}).items():
                sample, labels = json.loads(key)
                metric.add_sample(sample, labels, float(number))
            yield metric
        yield GaugeMetricFamily("langfuse_exporter_up", "1 if the last round worked.", self.is_up)

    def try_round(self, langfuse: Langfuse) -> str:
        """Take a round, save it, then show it; return why that failed, or an empty text."""
        try:
            state = take_round(langfuse, self.state)
            save_state(self.path, state)
        except (httpx.HTTPError, ApiError, OSError) as error:
            self.is_up = False
            answered = isinstance(error, ApiError) and f"Langfuse answered {error.status_code}"
            return f"Nothing is counted in this round: {answered or error}"
        self.state, self.is_up = state, True
        return ""


def main() -> None:
    """Connect, continue from the saved numbers, and take one round after another."""
    parser = Arguments(prog="python -m recipes.prometheus_exporter")
    parser.add_argument("--once", action="store_true", help="print the numbers and exit")
    parser.add_argument("--port", type=int, default=9464, help="default: %(default)s; 0: any free")
    parser.add_argument("--every", type=float, default=15, help="seconds, at least 1")
    options = parser.parse_args()
    registry = CollectorRegistry()
    with redirect_stdout(io.StringIO()) if options.once else nullcontext():  # numbers alone
        connect(asks_model=False)
        langfuse = Langfuse()
    if not tracing_is_on():
        fail("Tracing is off, so nothing can be read: unset LANGFUSE_TRACING_ENABLED.", 2)
    path = state_path()
    try:
        registry.register(exporter := Exporter(path))
        if not options.once:
            server, _ = start_http_server(options.port, HOST, registry)
            show_line(f"Metrics are on http://{HOST}:{server.server_port}/metrics until Ctrl-C.")
    except ValueError:
        fail(f"{path} is damaged, or has other BUCKETS: restore it, or delete it to restart.", 2)
    except (OSError, OverflowError) as error:
        fail(f"Cannot start ({error}): if the port is in use, choose another with --port.", 2)
    while True:
        if problem := exporter.try_round(langfuse):
            problem += f" ({os.environ['LANGFUSE_BASE_URL']})"
        if options.once:
            show_line(generate_latest(registry).decode().rstrip())
            return fail(problem, 1) if problem else None
        if problem:
            show_line(problem, "red")
        threading.Event().wait(max(1, options.every))


if __name__ == "__main__":
    main()
