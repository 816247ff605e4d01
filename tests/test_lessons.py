"""Every lesson is run as a reader runs it, in each of the modes."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import (
    LESSONS,
    TOP,
    Desk,
    drawn_trees,
    free_port,
    promised_trees,
    stored_observations,
    stored_trees,
)

Serve = Callable[[], httpx.Client]
REFUSING = str(Path(__file__).parent / "refuse_sockets")


@pytest.fixture(params=LESSONS)
def lesson(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def answers(output: str) -> str:
    """Return the part of a lesson's output that does not depend on where traces go."""
    return output[output.index("shoes") : output.find("stored")]


def test_shows_what_it_stored(lesson: str, desk: Desk, serve: Serve) -> None:
    ran = desk.run(lesson)
    assert (ran.returncode, ran.stderr) == (0, "")
    client = serve()
    stored = stored_trees(client)
    assert stored == promised_trees((TOP / lesson).read_text())
    assert len(drawn_trees(ran.stdout)) > 0
    for tree in drawn_trees(ran.stdout):
        assert tree in stored
    link = ran.stdout.split()[-1]
    assert f":{desk.port}/project/local/traces/" in link
    assert client.get(link).status_code == 200
    for node in stored_observations(client):
        check_good_practice(node)


def check_good_practice(node: dict[str, Any]) -> None:
    where = f"{node['traceName']}: {node['name']}"
    verbs = "answer|choose|classify|find|look|stream|write"
    assert re.fullmatch(f"({verbs})(-[a-z]+)*", node["name"]), where
    assert node["environment"] == "development", where
    assert node["release"] == "lessons", where
    if node["isRootObservation"]:
        assert node["input"], where
        assert node["output"], where
    if node["type"] == "GENERATION":
        assert node["model"], where
        if node["level"] == "ERROR":
            assert node["statusMessage"], where
        else:
            assert node["usageDetails"]["input"] > 0, where
            assert node["costDetails"]["total"] > 0, where


def test_runs_twice_without_duplicates(lesson: str, desk: Desk, serve: Serve) -> None:
    first, second = desk.run(lesson), desk.run(lesson)
    assert (second.returncode, second.stderr) == (0, "")
    promised = promised_trees((TOP / lesson).read_text())
    assert sorted(stored_trees(serve())) == sorted(promised * 2)
    assert answers(first.stdout) == answers(second.stdout)


def test_tracing_off_opens_no_socket(lesson: str, desk: Desk) -> None:
    traced = desk.run(lesson)
    desk.db.unlink()
    refused = desk.folder / "refused"
    ran = desk.run(
        lesson,
        LANGFUSE_TRACING_ENABLED="false",
        PYTHONPATH=REFUSING,
        REFUSE_SOCKETS="all",
        REFUSED_SOCKETS_FILE=str(refused),
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert not refused.exists(), refused.read_text()
    assert not desk.db.exists()
    for line in re.findall(r"^ {4,}\S.*", answers(traced.stdout), flags=re.MULTILINE):
        assert line in ran.stdout


def test_runs_without_network(lesson: str, desk: Desk, tmp_path: Path) -> None:
    ran = desk.run(
        lesson,
        TIKTOKEN_CACHE_DIR=str(tmp_path / "empty"),  # so counts are estimates
        PYTHONPATH=REFUSING,
        REFUSE_SOCKETS="internet",
        REFUSED_SOCKETS_FILE=str(tmp_path / "refused"),
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert drawn_trees(ran.stdout)
    # The refusal itself is at work: tiktoken did try.
    assert "openaipublic" in (tmp_path / "refused").read_text()


def test_sends_to_langfuse_with_two_keys(lesson: str, desk: Desk, serve: Serve) -> None:
    langfuse = serve()
    ran = desk.run(
        lesson,
        LANGFUSE_PUBLIC_KEY="pk-lf-local",
        LANGFUSE_SECRET_KEY="sk-lf-local",
        LANGFUSE_BASE_URL=str(langfuse.base_url),
        LOCAL_LANGFUSE_DB=str(desk.folder / "unused.db"),
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert stored_trees(langfuse) == promised_trees((TOP / lesson).read_text())
    assert not (desk.folder / "unused.db").exists()
    assert "pk-lf-local" not in ran.stdout, "keys are masked"
    assert "sk-lf-local" not in ran.stdout


def test_uses_the_local_server_that_is_running(lesson: str, desk: Desk, serve: Serve) -> None:
    local = serve()
    ran = desk.run(lesson, LOCAL_LANGFUSE_DB=str(desk.folder / "unused.db"))
    assert (ran.returncode, ran.stderr) == (0, "")
    assert stored_trees(local)
    assert not (desk.folder / "unused.db").exists()


def test_says_what_is_lost_when_langfuse_is_down(lesson: str, desk: Desk) -> None:
    ran = desk.run(
        lesson,
        LANGFUSE_PUBLIC_KEY="pk-lf-1234567890ab",
        LANGFUSE_SECRET_KEY="sk-lf-1234567890ab",
        LANGFUSE_BASE_URL=f"http://127.0.0.1:{free_port()}",
    )
    assert ran.returncode == 1
    assert ran.stderr.count("\n") == 1, ran.stderr
    assert "LANGFUSE_BASE_URL" in ran.stderr
    if lesson.startswith("01"):
        assert "nothing listens there" in ran.stdout
    else:
        assert "lost" in ran.stderr
        assert "Unworn shoes can be returned within 30 days." in ran.stdout
