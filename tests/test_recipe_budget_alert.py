"""The alert says what is stored, tells it once, and never takes silence for good news."""

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from conftest import KEYS, Desk, free_port
from langfuse.api import LangfuseAPI

from local_langfuse import start
from recipes import budget_alert
from recipes.budget_alert import deliver, doubts, main, parse_period

RECIPE = ("-m", "recipes.budget_alert")
LOUD = "<!channel> & co\n"  # a model's name, as a trace may have it
SECRET = "T0/B1/s3cr3t"


@dataclass
class Receiver:
    """A webhook, and what was posted to it."""

    url: str
    got: list[tuple[str, Any]] = field(default_factory=list)  # content type, JSON


@contextmanager
def receiving(status: int = 200) -> Iterator[Receiver]:
    """Run a webhook that answers with this status."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.got.append((self.headers["content-type"], json.loads(body)))
            self.send_response(status)
            self.send_header("location", "/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver = Receiver(f"http://127.0.0.1:{server.server_port}/{SECRET}")
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield receiver
        server.shutdown()


def span(number: int, seconds: float = 2, ended_ago: float = 600, **own: Any) -> dict[str, Any]:
    """Return an OTLP span of its own trace; what is not text is sent as JSON."""
    end = datetime.now(UTC) - timedelta(seconds=ended_ago)
    begin = end - timedelta(seconds=seconds)
    observed = {"type": "generation", "model.name": "gpt-4o"} | own.pop("observed", {})
    own |= {f"langfuse.observation.{key}": value for key, value in observed.items()}
    texts = {key: v if isinstance(v, str) else json.dumps(v) for key, v in own.items()}
    return {
        "traceId": f"{number:032x}",
        "spanId": f"{number:016x}",
        "name": "write-answer",
        "startTimeUnixNano": f"{begin.timestamp():.6f}000".replace(".", ""),
        "endTimeUnixNano": f"{end.timestamp():.6f}000".replace(".", ""),
        "attributes": [{"key": k, "value": {"stringValue": v}} for k, v in texts.items()],
    }


def cents(number: int, usd: float = 0.01, ended_ago: float = 600) -> dict[str, Any]:
    """Return a call that has cost so much."""
    return span(number, ended_ago=ended_ago, observed={"cost_details": {"total": usd}})


FAILED = {"level": "ERROR"}
SPANS = [
    *(cents(number) for number in range(1, 18)),
    # The same model with and without a cost: a sum by model would hide the second.
    span(18, observed={"model.name": LOUD, "cost_details": {"total": 0.01}}),
    cents(19, usd=0.0100001),
    span(20, observed={"model.name": LOUD, "usage_details": {"input": 5}}),
    span(21, seconds=30, observed=FAILED),  # refused: it has cost nothing
    span(24, observed={"type": "chain"}),
    # These are not of this period, or no calls of a model.
    cents(22, ended_ago=26 * 3600),
    span(23, seconds=100, observed={**FAILED, "type": "tool"}),
]
ALL = ("--period", "24h", "--max-usd", "{}", "--max-error-rate", "{}", "--max-p95-seconds", "{}")


def limits(*most: str) -> list[str]:
    given = iter(most)
    return [next(given) if part == "{}" else part for part in ALL]


LEFT_OUT = "Spend is at least that: it leaves out 1 call of {}, of unknown cost."
EXCEEDED = limits("0.19", "0.0476", "1.999")


@dataclass
class Alerts:
    """The recipe, run side by side in each of its cases, and what the webhooks got."""

    runs: dict[str, Future[subprocess.CompletedProcess[str]]]
    within: Receiver
    over: Receiver
    client: httpx.Client

    def ran(self, case: str) -> tuple[int, str, str]:
        ran = self.runs[case].result()
        assert SECRET not in ran.stdout + ran.stderr
        return ran.returncode, ran.stdout, ran.stderr


@pytest.fixture(scope="module")
def alerts(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Iterator[Alerts]:
    desk = Desk(tmp_path_factory.mktemp("alerts"), vocabulary)
    running = start(desk.db, desk.port)
    client = httpx.Client(base_url=running.base_url, auth=KEYS, trust_env=False)
    with client, receiving() as within, receiving() as over:
        body = {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {}, "spans": SPANS}]}]}
        client.post("/api/public/otel/v1/traces", json=body).raise_for_status()
        secret = desk.folder / "webhook.txt"
        secret.write_text(f"--webhook={over.url}\n")
        langfuse = {"LANGFUSE_PUBLIC_KEY": KEYS[0], "LANGFUSE_SECRET_KEY": KEYS[1]}
        langfuse |= {"LANGFUSE_BASE_URL": running.base_url}
        cases: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
            "within": ((*limits("0.1900001", "0.0477", "2"), "--webhook", within.url), {}),
            "over": ((*EXCEEDED, f"@{secret}"), langfuse),
        }
        with ThreadPoolExecutor(2) as pool:
            runs = {
                case: pool.submit(desk.run, *RECIPE, *options, **env)
                for case, (options, env) in cases.items()
            }
        yield Alerts(runs, within, over, client)
    running.stop()


def test_within_the_limits_nobody_is_disturbed(alerts: Alerts) -> None:
    status, said, errors = alerts.ran("within")
    assert (status, errors) == (0, "")
    assert alerts.within.got == []
    for words in (
        "  spend                $0.190000    limit $0.190000\n",
        "  error rate           4.8%         limit 4.8%\n",
        "  p95 latency          2.00 s       limit 2.00 s\n",
        f"Within the limits. {LEFT_OUT.format(repr(LOUD))}\n",
    ):
        assert words in said
    link = said.split("costliest trace")[1].split()[0]
    assert link.endswith(f"{19:032x}"), "the most expensive trace of the period"
    assert alerts.client.get(httpx.URL(link).path).status_code == 200


def test_over_a_limit_one_message_says_everything(alerts: Alerts) -> None:
    status, said, errors = alerts.ran("over")
    [(kind, message)] = alerts.over.got
    text = message.pop("text")
    assert (status, kind) == (1, "application/json")
    words, link = text.split(" http")
    assert words == (
        "Over the limit in the last 24 hours: spend $0.190000 (limit $0.190000), "
        "error rate 4.8% (limit 4.8%), p95 latency 2.00 s (limit 2.00 s). "
        + LEFT_OUT.format(r"'&lt;!channel&gt; &amp; co\n'")
        + " The costliest trace is"
    )
    assert link.endswith(f"/project/local/traces/{19:032x}")
    assert errors == text.replace("&lt;!channel&gt; &amp;", "<!channel> &") + "\n"
    assert "limit $0.190000\n" in said
    assert message == {
        "limits": {"usd": 0.19, "error_rate": 0.0476, "p95_seconds": 1.999},
        "measured": {"usd": 0.1900001, "error_rate": 1 / 21, "p95_seconds": 2},
    }


# The program in this process, and its functions by themselves

Program = Callable[..., int]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Program:
    """Return the program as a function of a client of Langfuse's API, and its options."""

    def run(client: httpx.Client, *options: str) -> int:
        langfuse = SimpleNamespace(
            api=LangfuseAPI(base_url=str(client.base_url), httpx_client=client),
            get_trace_url=lambda trace_id: f"https://langfuse.test/{trace_id}",
        )
        monkeypatch.setattr(sys, "argv", ["budget_alert", *options])
        monkeypatch.setattr(budget_alert, "connect", lambda **_: None)
        monkeypatch.setattr(budget_alert, "Langfuse", lambda: langfuse)
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return run


def test_a_message_that_nobody_took_has_a_status_of_its_own(
    alerts: Alerts, program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    with receiving(503) as refusing:
        assert program(alerts.client, *EXCEEDED[:6], "--webhook", refusing.url) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert errors.startswith("Nobody was told, 127.0.0.1 answered 503. Over the limit")
    assert SECRET not in errors
    [(_, message)] = refusing.got
    assert message["limits"] == {"usd": 0.19, "error_rate": 0.0476}
    assert "p95" not in message["text"]
    assert message["text"].endswith(f"trace is {19:032x}"), "a link opens on this machine only"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--max-usd 0.19", "spend"),
        ("--max-error-rate 0.0476", "error rate"),
        ("--max-p95-seconds 1.999", "p95 latency"),
    ],
)
def test_each_limit_counts_by_itself(
    options: str,
    words: str,
    alerts: Alerts,
    program: Program,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert program(alerts.client, *options.split()) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"Over the limit in the last 24 hours: {words} ")
    assert error.count("limit ") == 2, "the headline and one number"


def test_a_period_without_calls_is_within_and_said(
    program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = start(tmp_path / "langfuse.db")
    with httpx.Client(base_url=empty.base_url, auth=KEYS, trust_env=False) as client:
        status = program(client, *limits("0", "0", "0"))
    empty.stop()
    assert status == 0
    assert capsys.readouterr() == (
        "Within the limits: no model was called in this period.\n",
        "",
    )


@pytest.mark.parametrize("case", ["dead", "wrong keys"])
def test_what_cannot_be_told_is_not_good_news(
    case: str, alerts: Alerts, program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"http://127.0.0.1:{free_port()}" if case == "dead" else alerts.client.base_url
    with httpx.Client(base_url=url, auth=("pk-lf-a", "sk-lf-a"), trust_env=False) as client:
        assert program(client, "--max-usd", "0", "--webhook", alerts.within.url) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert errors.startswith("Cannot tell whether a limit is exceeded")
    assert ("Connection refused" if case == "dead" else "it answered 401") in errors
    assert alerts.within.got == []


@pytest.mark.parametrize("status", [200, 204, 302, 404, 410])
def test_only_a_success_is_a_delivery(status: int) -> None:
    with receiving(status) as receiver:
        problem = deliver(receiver.url, "<a>", {"usd": Decimal("0.1")}, {})
    assert problem == ("" if status < 300 else f"127.0.0.1 answered {status}")
    message = {"text": "&lt;a&gt;", "measured": {"usd": 0.1}, "limits": {}}
    assert receiver.got == [("application/json", message)]


@pytest.mark.parametrize("address", ["http://127.0.0.1:{port}", "http://a..b"])
def test_a_webhook_that_is_not_there_is_named_without_its_secret(address: str) -> None:
    problem = deliver(f"{address.format(port=free_port())}/{SECRET}", "", {}, {})
    assert " cannot be reached (" in problem
    assert SECRET not in problem


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "give at least one of --max-usd, --max-error-rate and --max-p95-seconds"),
        ("--max-usd 1 --period 24", "'24' is not a period such as 24h or 7d"),
        ("--max-usd 1 --period 30m", "'30m' is not a period such as 24h or 7d"),
        ("--max-usd 1 --period 0h", "'0h' is not a period such as 24h or 7d"),
        ("--max-usd -1", "'-1' is not a number such as 5 or 0.05"),
        ("--max-usd nan", "'nan' is not a number such as 5 or 0.05"),
        ("--max-error-rate 5", "--max-error-rate is more than all calls: write 5 % as 0.05"),
        ("--max-error-rate 1e3", "'1e3' is not a number such as 5 or 0.05"),
        (f"--max-usd 1 --webhook hooks.test/{SECRET}", "the webhook is not the address"),
        (f"--max-usd 1 --webhok https://hooks.test/{SECRET}", "unrecognized arguments: --webhok"),
        ("--max-usd 1 @nowhere.txt", "No such file or directory: 'nowhere.txt'"),
    ],
)
def test_a_wrong_option_is_said_in_one_line(
    given: str, said: str, program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    with httpx.Client() as unused:
        assert program(unused, *given.split()) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert "--help" in error
    assert SECRET not in error


def test_reads_a_period() -> None:
    assert parse_period("36h") == timedelta(hours=36)
    assert parse_period("7d") == timedelta(days=7)


def test_counts_what_the_spend_leaves_out() -> None:
    assert doubts(Counter()) == ""
    assert "leaves out 2 calls of 'a', 1 call of 'b', of unknown" in doubts(Counter(a=2, b=1))
