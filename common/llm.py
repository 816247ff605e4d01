"""An OpenAI client for the lessons: a real endpoint, or the offline model.

Set `OPENAI_API_KEY` for OpenAI, or `OPENAI_BASE_URL` for any server that speaks its
protocol (Ollama, vLLM). With neither, the same client talks to the offline model. All
three are `langfuse.openai` clients, so that every call is traced.
"""

import os
from typing import Any
from urllib.parse import urlsplit

import httpx2
from langfuse.openai import AsyncOpenAI, OpenAI

from common.offline_model import OfflineTransport

DEFAULT_MODEL = "gpt-4o-mini"
DEFAULT_URL = "https://api.openai.com/v1"
OFFLINE_URL = "https://offline.invalid/v1"  # a name that never resolves


def openai_client() -> OpenAI:
    """Return a traced client; raise ValueError where OPENAI_BASE_URL is not a URL."""
    if _is_offline():
        return OpenAI(**_endpoint(), http_client=httpx2.Client(transport=OfflineTransport()))
    return OpenAI(**_endpoint())


def async_openai_client() -> AsyncOpenAI:
    """Return a traced client for asyncio; raise ValueError as `openai_client` does."""
    if _is_offline():
        client = httpx2.AsyncClient(transport=OfflineTransport())
        return AsyncOpenAI(**_endpoint(), http_client=client)
    return AsyncOpenAI(**_endpoint())


def model_name() -> str:
    """Return the model to ask for: OPENAI_MODEL, or `gpt-4o-mini`."""
    return _setting("OPENAI_MODEL") or DEFAULT_MODEL


def model_label() -> str:
    """Return who answers, for people: `"gpt-4o-mini at https://api.openai.com/v1"`."""
    if _is_offline():
        return (
            "the offline model (no OPENAI_API_KEY or OPENAI_BASE_URL; "
            f"answers only from its prompt), priced as {model_name()}"
        )
    url = urlsplit(_endpoint()["base_url"])
    # Without what a URL may hold before its host: a user's name and password.
    return f"{model_name()} at {url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"


def _setting(name: str) -> str:
    return os.environ.get(name, "").strip()


def _is_offline() -> bool:
    return not (_setting("OPENAI_API_KEY") or _setting("OPENAI_BASE_URL"))


def _endpoint() -> dict[str, Any]:
    """Return the client's settings. A server of your own needs no key, but the client does."""
    if _is_offline():
        return {"api_key": "offline", "base_url": OFFLINE_URL}
    url = _setting("OPENAI_BASE_URL") or DEFAULT_URL
    if not _is_url(url):
        # The value is left out: it may contain a password.
        raise ValueError(
            "OPENAI_BASE_URL is not a URL: write it without quotes or spaces, "
            f"like {DEFAULT_URL} or http://localhost:11434/v1"
        )
    return {"api_key": _setting("OPENAI_API_KEY") or "none", "base_url": url}


def _is_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        valid = url.scheme in {"http", "https"} and bool(url.hostname) and url.port != 0
    except ValueError:  # a port that is no number, a bracket left open
        return False
    return valid and not any(char.isspace() or char in "\"'`<>" for char in text)
