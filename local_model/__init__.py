"""A local stand-in for OpenAI's HTTP API: chat completions, responses, embeddings, models.

It is not OpenAI and no language model: it repeats sentences from its prompt. It answers
on loopback, without an account, a real key or a network, and marks every answer with the
header `x-local-model: true`.

`python -m local_model` serves it until Ctrl-C; `start()` serves it from a thread of the
program that calls it.
"""

import http.client
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

DEFAULT_PORT = 4748
API_KEY = "sk-local"  # any key will do; this one says what it opens
# The header of every answer. No other server sends it.
MARKER = "x-local-model"


@dataclass(frozen=True)
class LocalModel:
    """A running local model."""

    base_url: str  # where to send, with the /v1 that OPENAI_BASE_URL ends in
    stop: Callable[[], None]  # ends it; a program that ends need not call it


def start(port: int = 0) -> LocalModel:
    """Serve the model from a daemon thread of this process; port 0 takes a free one.

    On return the port is known and requests are answered. Raises `CannotStart` of
    `local_langfuse` for a port that is taken. Nothing has to be stopped at the end of a
    program: the thread answers until Python is gone.
    """
    # Imported here so that `import local_model` costs nothing where it is not used.
    from local_model.server import serve  # noqa: PLC0415

    return serve(port)


def is_running(base_url: str) -> bool:
    """Tell whether a local model answers at this base URL, within 0.3 s.

    `is_running("http://127.0.0.1:4748/v1") -> True`
    """
    try:
        address = urlsplit(base_url)
        if address.hostname not in ("127.0.0.1", "localhost"):
            return False  # a local model is nowhere else
        connection = http.client.HTTPConnection(address.netloc, timeout=0.3)
    except (ValueError, http.client.InvalidURL):
        return False
    try:
        connection.request("HEAD", f"{address.path.rstrip('/')}/models")
        return connection.getresponse().getheader(MARKER) == "true"
    except (OSError, ValueError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def find_or_start(known: str = "") -> str:
    """Return the base URL of the local model at `known`, or of one that is started here."""
    return known if known and is_running(known) else start().base_url


def label(model: str) -> str:
    """Return in words what answers under the name of this model, and how it counts tokens."""
    from local_model.tokens import is_exact  # noqa: PLC0415  tiktoken is slow to import

    tokens = "counted where OpenAI's vocabulary is at hand" if is_exact(model) else "estimated"
    return (
        f"the local model, priced as {model} (it repeats sentences from its prompt; timings are "
        f"simulated; tokens are {tokens})"
    )
