"""Counts against the real vocabulary, and what happens where it cannot be had."""

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Never

import pytest
import requests
import tiktoken

from local_model import tokens
from local_model.tokens import TokenCount, count_message_tokens, count_tokens

TOP = Path(__file__).resolve().parents[1]
BLOBS = "https://openaipublic.blob.core.windows.net/encodings"
GREEK = "Πόσες μέρες έχω; How many days do I have?"  # the vocabularies differ on it
PROSE = [
    (
        "You can return shoes within 30 days of delivery, as long as they have not been worn "
        "outside. Send them back in the box they came in, and we refund the price to the card "
        "you paid with. Refunds usually arrive after five working days."
    ),
    (
        "When the rain finally stopped, the whole village came out to look at the river. It "
        "had risen over the lower bridge during the night and carried away two fences, a boat "
        "and somebody's washing line. Old Mr. Harper said he had seen worse in his youth, but "
        "nobody believed him."
    ),
    (
        "Photosynthesis is the process by which plants, algae and some bacteria turn light "
        "into chemical energy. Carbon dioxide and water are converted into glucose and "
        "oxygen, mostly inside the chloroplasts, where chlorophyll absorbs red and blue "
        "wavelengths."
    ),
    (
        "Hi, I ordered a pair of trail runners (order A-1042) on the 3rd of March and they "
        "still haven't shown up. Could you tell me where they are? I'm leaving for a race on "
        "Friday and I really need them. Thanks, Ada"
    ),
    (
        "It is a truth universally acknowledged, that a single man in possession of a good "
        "fortune, must be in want of a wife. However little known the feelings or views of "
        "such a man may be on his first entering a neighbourhood, this truth is so well fixed "
        "in the minds of the surrounding families, that he is considered as the rightful "
        "property of their daughters."
    ),
    (
        "Quarterly revenue rose 8.4% to $2.31 billion, beating analysts' expectations, while "
        "operating margin narrowed to 11.9% from 13.2% a year earlier as shipping costs "
        "climbed. Shares fell 3% in after-hours trading."
    ),
]


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo, for one test, what this process has loaded or given up."""
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    monkeypatch.setattr(tokens, "_vocabularies", tokens._Vocabularies())


LOADED: dict[str, tiktoken.Encoding] = {}  # tiktoken's own, filled by the first tests


@pytest.fixture
def at_hand(
    vocabulary: Path,
    undecided: None,  # noqa: ARG001 (it comes first)
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Let tiktoken find the vocabularies, and keep what it has read of them."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(vocabulary))
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", LOADED)


@pytest.fixture
def refused(
    undecided: None,  # noqa: ARG001 (it comes first)
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Path:
    """Refuse every download; the vocabularies are those in the folder returned."""

    def refuse(*_: Any, **__: Any) -> Never:
        raise requests.ConnectionError("refused")

    monkeypatch.setattr(requests, "get", refuse)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("at_hand")
@pytest.mark.parametrize(
    ("model", "encoding"),
    [
        ("gpt-4o-mini", "o200k_base"),
        ("gpt-4o-mini-2024-07-18", "o200k_base"),
        ("openai/gpt-5-nano", "o200k_base"),
        ("gpt-4-turbo", "cl100k_base"),
        ("text-embedding-3-small", "cl100k_base"),
    ],
)
def test_count_is_that_of_the_models_vocabulary(model: str, encoding: str) -> None:
    text = GREEK
    expected = len(tiktoken.get_encoding(encoding).encode(text))
    assert count_tokens(text, model) == TokenCount(expected, exact=True)


@pytest.mark.usefixtures("at_hand")
def test_the_two_vocabularies_can_be_told_apart() -> None:
    assert count_tokens(GREEK, "gpt-4o") != count_tokens(GREEK, "gpt-4-turbo")


@pytest.mark.usefixtures("at_hand")
def test_a_newer_gpt_is_counted_with_the_latest_vocabulary_as_an_estimate() -> None:
    known = count_tokens(PROSE[0], "gpt-4o")
    assert count_tokens(PROSE[0], "gpt-9") == TokenCount(known.tokens, exact=False)


@pytest.mark.usefixtures("undecided")
def test_other_models_are_estimated_and_fetch_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: pytest.fail(f"fetched {name}"))
    for model in ("claude-sonnet-4-5", "llama3.2", "my-local-llm"):
        assert not count_tokens(PROSE[0], model).exact
    assert tokens._vocabularies._loaded == {}


@pytest.mark.usefixtures("at_hand")
@pytest.mark.parametrize("text", ["<|endoftext|>", "<|fim_prefix|> and <|endofprompt|>"])
def test_special_tokens_are_text(text: str) -> None:
    count = count_tokens(text, "gpt-4o")
    assert count.exact
    assert count.tokens > 3


@pytest.mark.usefixtures("at_hand")
def test_nothing_is_no_token() -> None:
    assert count_tokens("", "gpt-4o").tokens == count_tokens("", "claude-x").tokens == 0


@pytest.mark.usefixtures("at_hand")
def test_a_chat_costs_its_texts_and_the_documented_overhead() -> None:
    messages = [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "name": "ada", "content": "How long do I have?"},
    ]
    texts = ["system", "Answer briefly.", "user", "ada", "How long do I have?"]
    inside = sum(count_tokens(text, "gpt-4o").tokens for text in texts)
    expected = 3 + 2 * 3 + 1 + inside
    assert count_message_tokens(messages, "gpt-4o") == TokenCount(expected, exact=True)


@pytest.mark.usefixtures("at_hand")
def test_parts_of_text_count_like_the_text_and_images_make_an_estimate() -> None:
    whole = count_message_tokens([{"role": "user", "content": "What is this?"}], "gpt-4o")
    text = {"type": "text", "text": "What is this?"}
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    parts = [{"role": "user", "content": [text]}]
    assert count_message_tokens(parts, "gpt-4o") == whole
    seen = [{"role": "user", "content": [text, image]}]
    assert count_message_tokens(seen, "gpt-4o") == TokenCount(whole.tokens, exact=False)


@pytest.mark.usefixtures("at_hand")
def test_tool_calls_without_content_are_counted_as_an_estimate() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    bare: dict[str, Any] = {"role": "assistant", "content": None}
    without = count_message_tokens([bare], "gpt-4o")
    count = count_message_tokens([{**bare, "tool_calls": [call]}], "gpt-4o")
    assert without.exact
    assert not count.exact
    assert count.tokens > without.tokens + 5


@pytest.mark.usefixtures("at_hand")
@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4-turbo"])
def test_the_estimate_is_as_good_as_its_docstring_says(model: str) -> None:
    errors = [
        count_tokens(text, "unknown").tokens / count_tokens(text, model).tokens - 1
        for text in PROSE
    ]
    assert max(map(abs, errors)) < 0.10
    assert sum(map(abs, errors)) / len(errors) < 0.05


def test_a_count_says_whether_it_is_an_estimate() -> None:
    assert str(TokenCount(27, exact=True)) == "27 tokens"
    assert str(TokenCount(27, exact=False)) == "about 27 tokens (estimate)"
    assert str(TokenCount(1, exact=True)) == "1 token"


def test_a_refused_download_gives_an_estimate(refused: Path) -> None:
    count = count_tokens(PROSE[0], "gpt-4o")
    assert not count.exact
    assert count == count_tokens(PROSE[0], "unknown")
    assert list(refused.iterdir()) == []


def test_a_refused_download_does_not_spoil_a_vocabulary_at_hand(
    refused: Path, vocabulary: Path
) -> None:
    name = hashlib.sha1(f"{BLOBS}/cl100k_base.tiktoken".encode()).hexdigest()
    (refused / name).write_bytes((vocabulary / name).read_bytes())
    assert not count_tokens("hello", "gpt-4o").exact
    assert count_tokens("hello", "gpt-4-turbo").exact


def test_a_page_in_place_of_the_vocabulary_gives_an_estimate(
    refused: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = requests.Response()
    page.status_code, page._content = 200, b"<html>Please log in to this network</html>"
    monkeypatch.setattr(requests, "get", lambda _: page)
    assert not count_tokens("hello", "gpt-4o").exact
    assert list(refused.iterdir()) == []


@pytest.mark.usefixtures("at_hand")
def test_a_late_vocabulary_does_not_change_the_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    real, release, done = tiktoken.get_encoding, threading.Event(), threading.Event()

    def slow(name: str) -> tiktoken.Encoding:
        release.wait()
        try:
            return real(name)
        finally:
            done.set()

    monkeypatch.setattr(tiktoken, "get_encoding", slow)
    monkeypatch.setattr(tokens, "READ_SECONDS", 0.05)
    before = count_tokens("antidisestablishmentarianism", "gpt-4o")
    release.set()
    assert done.wait(30)
    assert count_tokens("antidisestablishmentarianism", "gpt-4o") == before
    assert not before.exact


SILENT_SERVER = """
import socket, threading, time
import requests
from local_model import tokens

tokens.FETCH_SECONDS = 0.3  # a faster test
tokens._vocabularies = tokens._Vocabularies()
server = socket.create_server(("127.0.0.1", 0))
url = "http://127.0.0.1:%d" % server.getsockname()[1]
get, waits = requests.get, []
requests.get = lambda _: get(url)
join = threading.Thread.join
threading.Thread.join = lambda thread, seconds=None: (waits.append(seconds), join(thread, seconds))
for model in ("gpt-4o", "gpt-4o", "gpt-4-turbo"):
    print(tokens.count_tokens("How long do I have?", model))
print(len(waits), sum(waits) <= 0.3, waits[1] == 0.0)
"""


def test_a_server_that_never_answers_is_waited_for_once(tmp_path: Path) -> None:
    assert tokens.FETCH_SECONDS == 2.0
    env = {**os.environ, "TIKTOKEN_CACHE_DIR": str(tmp_path), "NO_PROXY": "*"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SILENT_SERVER],
        cwd=TOP,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,  # without the deadline it would hang forever
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    estimate = "about 6 tokens (estimate)\n"
    assert done.stdout == 3 * estimate + "2 True True\n"
