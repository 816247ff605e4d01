"""A local stand-in for OpenAI's HTTP API: chat completions, responses, embeddings, models.

It is neither OpenAI nor a language model: it repeats sentences from its prompt. It answers
on loopback, without an account, a real key or a network, and marks every answer with the
header `x-local-model: true`.

`python -m local_model` runs it until Ctrl-C; `start()` runs it in a thread of the program
that calls it.
"""

import http.client
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

DEFAULT_PORT = 4748
API_KEY = "sk-local"  # any key will do; this one says what it is for
# The header of every answer. No other server sends it.
MARKER = "x-local-model"


@dataclass(frozen=True)
class LocalModel:
    """A running local model."""

    base_url: str  # where to send, including the /v1 at the end of OPENAI_BASE_URL
    stop: Callable[[], None]  # ends it; you need not call it before your program ends


def start(port: int = 0) -> LocalModel:
    """Serve the model from a daemon thread of this process; port 0 picks a free one.

    When this returns, requests are answered. Raises `CannotStart`, from `local_langfuse`, if
    the port is taken. You need not stop it when your program ends: the thread goes on until
    Python exits.
    """
    # Imported here so that `import local_model` costs nothing if it is not used.
    from local_model.server import serve  # noqa: PLC0415

    return serve(port)


def is_running(base_url: str) -> bool:
    """Tell whether a local model answers at this base URL, within 0.3 s.

    `is_running("http://127.0.0.1:4748/v1") -> True`
    """
    try:
        address = urlsplit(base_url)
        if address.hostname not in ("127.0.0.1", "localhost"):
            return False  # a local model is only on this machine
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
    """Return the base URL of the local model at `known`, or start one here and return its URL."""
    return known if known and is_running(known) else start().base_url


def label(model: str) -> str:
    """Return in words what answers in place of this model, and how it counts tokens."""
    from local_model.tokens import is_exact  # noqa: PLC0415  tiktoken is slow to import

    tokens = "counted with OpenAI's vocabulary if available" if is_exact(model) else "estimated"
    return (
        f"the local model, priced as {model} (it repeats sentences from its prompt; timings are "
        f"simulated; tokens are {tokens})"
    )
