"""An OpenAI client for the lessons: a real endpoint, or the offline model.

Set `OPENAI_API_KEY` for OpenAI, or `OPENAI_BASE_URL` for any server that speaks its
protocol (Ollama, vLLM). With neither, the same client talks to the offline model. All
three are `langfuse.openai` clients, so that every call is traced.

`langfuse.openai` wraps the openai package of the whole process, LangChain's calls too, so
it is imported with the first client and not before.
"""

import textwrap
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx2
import openai

from common.offline_model import OfflineTransport
from common.settings import Setting, check_url, masked, read_settings
from common.tokens import count_tokens

if TYPE_CHECKING:
    from langfuse.openai import AsyncOpenAI, OpenAI

REAL_API = "https://api.openai.com/v1"
OFFLINE_API = "https://offline.invalid/v1"  # a name that never resolves
PATIENCE_SECONDS = 60.0


def openai_client() -> "OpenAI":
    """Return a traced client; raise `SettingsError` where OPENAI_BASE_URL is not a URL."""
    from langfuse.openai import OpenAI  # noqa: PLC0415  the import wraps: see above

    if _is_offline():
        return OpenAI(**_endpoint(), http_client=httpx2.Client(transport=OfflineTransport()))
    return OpenAI(**_endpoint())


def async_openai_client() -> "AsyncOpenAI":
    """Return a traced client for asyncio; raise `SettingsError` as `openai_client` does."""
    from langfuse.openai import AsyncOpenAI  # noqa: PLC0415  the import wraps: see above

    if _is_offline():
        client = httpx2.AsyncClient(transport=OfflineTransport())
        return AsyncOpenAI(**_endpoint(), http_client=client)
    return AsyncOpenAI(**_endpoint())


def chat_settings() -> dict[str, Any]:
    """Return what LangChain's `ChatOpenAI` needs to reach the same model with `ainvoke`.

    Nothing traces its calls: give them Langfuse's callback handler.
    """
    # Left to itself, LangChain warns of a proxy wherever NO_PROXY is set.
    settings = {"model": model_name(), "http_socket_options": (), **_endpoint()}
    if _is_offline():
        settings["http_async_client"] = httpx2.AsyncClient(transport=OfflineTransport())
    return settings


def model_name() -> str:
    """Return the model to ask for: OPENAI_MODEL, or `gpt-4o-mini`."""
    return read_settings()["OPENAI_MODEL"].value


def embedding_model_name() -> str:
    """Return the model for vectors: OPENAI_EMBEDDING_MODEL, or `text-embedding-3-small`."""
    return read_settings()["OPENAI_EMBEDDING_MODEL"].value


def model_label() -> str:
    """Return who answers, for people: `"gpt-4o-mini at https://api.openai.com/v1"`."""
    if not _is_offline():
        return f"{model_name()} at {endpoint_shown()}"
    counted = "counted" if count_tokens("a", model_name()).exact else "estimated"
    return (
        f"the offline model, priced as {model_name()}, because no OPENAI_API_KEY is set: "
        f"it says sentences of its prompt, its pace is simulated, its tokens are {counted}"
    )


def endpoint_shown() -> str:
    """Return the address of the model's service, without a user's name and password."""
    url = urlsplit(_endpoint()["base_url"])
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"


def explain_failure(error: Exception) -> str:
    """Return in one line why a model did not answer, and what to check; without the key."""
    said = str(error)
    if isinstance(error, openai.APIConnectionError):
        cause = str(error.__cause__ or error).rstrip(".")
        said = f"{endpoint_shown()} cannot be reached: {cause}. Check OPENAI_BASE_URL."
    elif isinstance(error, openai.APIStatusError):
        told = textwrap.shorten(error.message, 300, placeholder=" …")  # a proxy answers with a page
        said = f"{told} Check OPENAI_API_KEY, OPENAI_BASE_URL and OPENAI_MODEL."
    key = read_settings()["OPENAI_API_KEY"].value
    return " ".join((said.replace(key, masked(key)) if key else said).split())


def _is_offline() -> bool:
    settings = read_settings()
    return not (settings["OPENAI_API_KEY"].value or settings["OPENAI_BASE_URL"].value)


def _endpoint() -> dict[str, Any]:
    """Return the client's settings. A server of your own needs no key, but the client does."""
    if _is_offline():
        return {"api_key": "offline", "base_url": OFFLINE_API}
    settings = read_settings()
    url: Setting = settings["OPENAI_BASE_URL"]
    if url.value:
        check_url(url)
    return {
        "api_key": settings["OPENAI_API_KEY"].value or "none",
        "base_url": url.value or REAL_API,
        "timeout": PATIENCE_SECONDS,
    }
