"""Every lesson runs with Langfuse disabled: needs only requirements.txt and pytest."""

from pathlib import Path

import pytest
from conftest import LESSONS, Desk

REFUSING = str(Path(__file__).parent / "refuse_sockets")
ANSWER = "Unworn shoes can be returned within 30 days."


@pytest.mark.parametrize("lesson", LESSONS)
def test_runs_with_langfuse_disabled_and_opens_no_socket_to_it(lesson: str, desk: Desk) -> None:
    refused = desk.folder / "refused"
    ran = desk.run(
        lesson,
        LANGFUSE_TRACING_ENABLED="false",
        PYTHONPATH=REFUSING,
        REFUSE_SOCKETS="all",  # but those to the model
        REFUSED_SOCKETS_FILE=str(refused),
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ANSWER in ran.stdout
    tried = refused.read_text().splitlines() if refused.exists() else []
    # Without the packages for the tests there is no vocabulary, and tiktoken tries to fetch it.
    assert [each for each in tried if "openaipublic" not in each] == []
    assert not desk.db.exists()
