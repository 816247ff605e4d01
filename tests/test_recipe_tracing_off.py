"""With tracing off, no recipe opens a socket or stores anything, and each says what it skips.

All run in one process, one after the other: what takes long is to import what they share.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Desk

REFUSING = str(Path(__file__).parent / "refuse_sockets")
NOBODY = "http://127.0.0.1:9"
COMMANDS = {
    "chatbot": [],
    "text_to_sql": [],
    "mask_and_sample": [],
    "support_agent": [],
    "budget_alert": ["--max-usd", "0", "--webhook", NOBODY],
    "export_traces": [],
    "prometheus_exporter": ["--once"],
}
TYPED = "/feedback 5\nHow can I pay?\n/feedback 5"
RUN_ALL = """
import contextlib, io, json, runpy, sys
typed, commands = json.loads(sys.argv[1])
for name, options in commands.items():
    sys.argv, sys.stdin = [name, *options], io.StringIO(typed)
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_module(f"recipes.{name}", run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
    print(json.dumps([name, status, out.getvalue(), err.getvalue()]))
"""


@dataclass
class Ran:
    """What one recipe printed, and its exit status."""

    status: int
    out: str
    err: str


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Desk:
    return Desk(tmp_path_factory.mktemp("off"), vocabulary)


@pytest.fixture(scope="module")
def runs(desk: Desk) -> dict[str, Ran]:
    done = desk.run(
        "-c",
        RUN_ALL,
        json.dumps([TYPED, COMMANDS]),
        LANGFUSE_TRACING_ENABLED="false",
        PYTHONPATH=REFUSING,
        REFUSE_SOCKETS="all",
        REFUSED_SOCKETS_FILE=str(desk.folder / "refused"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {name: Ran(*rest) for name, *rest in rows}


def test_no_socket_is_opened_and_nothing_is_stored(runs: dict[str, Ran], desk: Desk) -> None:
    assert runs.keys() == COMMANDS.keys()
    refused = desk.folder / "refused"
    assert not refused.exists(), refused.read_text()
    assert [path.name for path in desk.folder.iterdir()] == ["orders.db"]


def test_the_chat_goes_on_and_says_that_no_rating_is_stored(runs: dict[str, Ran]) -> None:
    ran = runs["chatbot"]
    assert (ran.status, ran.err) == (0, "")
    said = [line.strip() for line in ran.out.splitlines()[3:] if line]
    assert said[0].startswith("There is no answer to rate")
    assert said[1] == "You can pay by card, bank transfer or invoice."
    assert said[2].startswith("Not stored: tracing is off")
    assert said[3] == "Goodbye."
    assert len(said) == 5, "and no trace after the heading"


@pytest.mark.parametrize(
    ("recipe", "answer", "skipped", "times"),
    [
        ("text_to_sql", "  41 ", "Tracing is off and nothing is stored", 1),
        ("mask_and_sample", "Standard delivery takes", "Nothing is stored: tracing is off.", 1),
        ("support_agent", "Order A-1042 was shipped", "Tracing is off and nothing is stored", 1),
    ],
)
def test_answers_are_given_and_what_is_skipped_is_said(
    recipe: str, answer: str, skipped: str, times: int, runs: dict[str, Ran]
) -> None:
    ran = runs[recipe]
    assert (ran.status, ran.err) == (0, "")
    assert answer in ran.out
    assert ran.out.count(skipped) == times
    assert "What each team costs" not in ran.out


@pytest.mark.parametrize("recipe", ["budget_alert", "export_traces", "prometheus_exporter"])
def test_what_only_reads_ends_with_one_line_and_no_success(
    recipe: str, runs: dict[str, Ran]
) -> None:
    ran = runs[recipe]
    assert (ran.status, ran.err.count("\n")) == (2, 1), "a scheduler must not take it for good news"
    assert "racing is off" in ran.err
    assert "LANGFUSE_TRACING_ENABLED" in ran.err
