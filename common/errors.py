"""What went wrong with a service, in one line: what it answered, and what to check."""

import os
import textwrap
import traceback
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from langfuse.api.core import ApiError

from common.settings import TOP, masked, set_by_connect


class NotStoredError(Exception):
    """What was sent cannot be read back; the message says how much is missing."""


# What the client raises when a server does not answer in OpenAI's format.
_FORMLESS = (AttributeError, IndexError, KeyError, TypeError, ValueError)
_CHECK = "run `python -m recipes.check_connection`"


def explain(error: BaseException) -> str:
    """Return one line on what a service did wrong and what to check; "" for any other error."""
    if isinstance(error, NotStoredError):
        return str(error)
    if isinstance(error, ApiError):
        return f"Langfuse answered {error.status_code}: {_CHECK}."
    if isinstance(error, httpx.HTTPError):  # openai has its own errors
        return f"Langfuse cannot be reached ({error}): {_CHECK}, or unset both keys to stay local."
    ca = os.environ.get("SSL_CERT_FILE", "")
    unnamed = isinstance(error, OSError) and not error.filename  # as any client raises it
    if ca and unnamed and (not Path(ca).is_file() or "X509" in str(error)):
        return "SSL_CERT_FILE names no file with certificates: correct its path, or unset it."
    return explain_model(error)


def explain_model(error: BaseException) -> str:
    """Do the same for the model's service, without repeating a key or a whole web page."""
    names = {each.__name__ for each in type(error).__mro__ if each.__module__.startswith("openai")}
    if "APIConnectionError" in names:
        cause = str(error.__cause__ or error).rstrip(".")
        said = f"{_model_url()} cannot be reached: {cause}. Check OPENAI_BASE_URL."
    elif "OpenAIError" in names:
        told = textwrap.shorten(str(error), 300, placeholder=" …").rstrip(".")
        said = f"{told}. Check OPENAI_API_KEY, OPENAI_BASE_URL and OPENAI_MODEL."
    elif isinstance(error, _FORMLESS) and type(error) is not ValueError and _model_is_foreign():
        told = textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" …")
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if f.filename.startswith(str(TOP)) and ".venv" not in f.filename]
        at = f"{ours[-1].name}, line {ours[-1].lineno}" if ours else "a library"
        said = (
            f"{_model_url()} did not answer in OpenAI's format ({told}, in {at}). "
            "Check OPENAI_BASE_URL."
        )
    else:
        said = ""
    key = os.environ.get("OPENAI_API_KEY", "")
    return " ".join((said.replace(key, masked(key)) if len(key) > 4 else said).split())


def without_password(url: str) -> str:
    """Return an address without the user name and password in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _model_url() -> str:
    return without_password(os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1")


def _model_is_foreign() -> bool:
    url = os.environ.get("OPENAI_BASE_URL", "")
    return bool(url) and url != set_by_connect().get("OPENAI_BASE_URL")
