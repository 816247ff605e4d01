"""The settings: where each value came from, and what is wrong with it if it is wrong.

Nothing here opens a connection or prints. A mistake is a `SettingsError` of one line
that names the variable and the fix.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from dotenv import load_dotenv

TOP = Path(__file__).resolve().parents[1]
MARK = "SET_BY_CONNECT"  # in the environment: what `connect()` put there, as JSON

# Every variable the scripts read, with its default; `.env.example` explains each.
DEFAULTS = {
    "LANGFUSE_PUBLIC_KEY": "",
    "LANGFUSE_SECRET_KEY": "",
    "LANGFUSE_BASE_URL": "https://cloud.langfuse.com",
    "LANGFUSE_HOST": "",
    "LANGFUSE_TRACING_ENABLED": "true",
    "LANGFUSE_TRACING_ENVIRONMENT": "development",
    "LANGFUSE_RELEASE": "lessons",
    "LANGFUSE_SAMPLE_RATE": "1.0",
    "LANGFUSE_FLUSH_AT": "512",
    "LANGFUSE_FLUSH_INTERVAL": "5",
    "LANGFUSE_TIMEOUT": "5",
    "LOCAL_LANGFUSE_PORT": "4747",
    "LOCAL_LANGFUSE_DB": ".local_langfuse/langfuse.db",
    "OPENAI_API_KEY": "",
    "OPENAI_BASE_URL": "",
    "OPENAI_MODEL": "gpt-6-luna",
    "OPENAI_EMBEDDING_MODEL": "text-embedding-3-small",
}


class SettingsError(ValueError):
    """A setting cannot be used; the message names the variable and the fix."""


@dataclass(frozen=True)
class Setting:
    """One variable: its value, and whether that came from the environment, `.env` or a default."""

    name: str
    value: str
    source: str

    @property
    def shown(self) -> str:
        """The value as it may be printed: of a key, only enough to recognise it."""
        return masked(self.value) if self.name.endswith("_KEY") else self.value


@dataclass(frozen=True)
class Destination:
    """Where traces go. `why` says in a few words what decided it."""

    mode: Literal["disabled", "langfuse", "local"]
    why: str
    base_url: str = ""


def masked(key: str) -> str:
    """`masked("pk-lf-0c8ae1d2-1234") -> "pk-lf-…1234"`; a short key shows nothing of itself."""
    shown = next((p for p in ("pk-lf-", "sk-lf-", "sk-") if key.startswith(p)), "")
    if len(key) - len(shown) < 12:
        return f"{shown}…" if key else ""
    return f"{shown}…{key[-4:]}"


def set_by_connect() -> dict[str, str]:
    """Return what `connect()` put into the environment, here or in a parent process."""
    try:
        marked = json.loads(os.environ.get(MARK, "{}"))
    except ValueError:
        return {}
    return marked if isinstance(marked, dict) else {}


@cache
def read_settings(env_file: Path = TOP / ".env") -> Mapping[str, Setting]:
    """Load `.env` into the environment and return every setting with its source.

    A variable that is already set wins over `.env`. One that is empty, or that `connect()`
    has set in a parent process, counts as not set.
    """
    ours = set_by_connect()
    values = {name: os.environ.get(name, "") for name in DEFAULTS}
    already = {n for n, value in values.items() if value.strip() and value != ours.get(n)}
    for name in DEFAULTS.keys() - already:
        os.environ.pop(name, None)  # the SDK would read an empty rate as a number
    try:
        load_dotenv(env_file)
    except UnicodeDecodeError as error:
        raise SettingsError(f"{env_file} is not UTF-8: save it as UTF-8.") from error
    settings = {}
    for name, default in DEFAULTS.items():
        value = os.environ.get(name, "")
        if not value.strip():
            os.environ.pop(name, None)
            settings[name] = Setting(name, default, "default")
        else:
            settings[name] = Setting(name, value, "environment" if name in already else ".env")
    return settings


def choose_destination(settings: Mapping[str, Setting]) -> Destination:
    """Decide where traces go, or raise `SettingsError` for a mistake in the settings."""
    value = {name: setting.value for name, setting in settings.items()}
    for name, (has_form, wanted) in _FORMS.items():
        try:
            fits = has_form(value[name])
        except ValueError:
            fits = False
        if not fits:
            raise SettingsError(f"{name} is {_quoted(value[name])}: set it to {wanted}.")
    if value["LANGFUSE_TRACING_ENABLED"].lower() == "false":
        return Destination("disabled", "LANGFUSE_TRACING_ENABLED is false")
    for name in DEFAULTS:
        _refuse_stray_characters(name, value[name])
    public, secret = value["LANGFUSE_PUBLIC_KEY"], value["LANGFUSE_SECRET_KEY"]
    if not public and not secret:
        return Destination("local", "no Langfuse keys are set")
    mistake = _mistake_in_keys(public, secret)
    if mistake:
        raise SettingsError(mistake)
    base_url, why = _langfuse_url(settings)
    return Destination("langfuse", why, base_url)


def _refuse_stray_characters(name: str, value: str) -> None:
    if any(quote in value for quote in "\"'`"):
        raise SettingsError(f"{name} has quotes in its value: remove them.")
    if re.search(r"\s", value) and name not in ("LOCAL_LANGFUSE_DB", "LANGFUSE_RELEASE"):
        raise SettingsError(f"{name} has a space or line break in its value: remove it.")
    if name.endswith(("_KEY", "_URL", "_HOST")) and not value.isascii():
        raise SettingsError(f"{name} has a character that no key or address has: copy it again.")


def _quoted(value: str) -> str:
    # A key pasted into the wrong variable must not end up on the screen.
    return masked(value) if re.match(r"(pk|sk)-", value) or "@" in value else repr(value)


# What the SDK would otherwise answer with a traceback, or take for something else.
_FORMS: dict[str, tuple[Callable[[str], bool], str]] = {
    "LANGFUSE_TRACING_ENABLED": (lambda v: v.lower() in ("true", "false"), "true or false"),
    "LANGFUSE_TRACING_ENVIRONMENT": (
        lambda v: bool(re.fullmatch(r"(?!langfuse)[a-z0-9_-]{1,40}", v)),
        "at most 40 lower-case letters, digits, - and _, not beginning with langfuse",
    ),
    "LANGFUSE_SAMPLE_RATE": (lambda v: 0 <= float(v) <= 1, "a number from 0 to 1"),
    "LANGFUSE_FLUSH_AT": (lambda v: int(v) > 0, "a whole number above 0"),
    "LANGFUSE_FLUSH_INTERVAL": (lambda v: 0 < float(v) < 1e6, "a number of seconds above 0"),
    "LANGFUSE_TIMEOUT": (lambda v: int(v) > 0, "a whole number of seconds above 0"),
    "LOCAL_LANGFUSE_PORT": (lambda v: 0 < int(v) < 65536, "a port from 1 to 65535"),
}


def _mistake_in_keys(public: str, secret: str) -> str:
    if not secret:
        return "LANGFUSE_SECRET_KEY is missing: set it, or unset LANGFUSE_PUBLIC_KEY to stay local."
    if not public:
        return "LANGFUSE_PUBLIC_KEY is missing: set it, or unset LANGFUSE_SECRET_KEY to stay local."
    if public.startswith("sk-lf-") and secret.startswith("pk-lf-"):
        return "LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY are swapped: exchange their values."
    if public.startswith("sk-"):
        return "LANGFUSE_PUBLIC_KEY holds a secret key: put the pk-lf-… key there."
    if secret.startswith("pk-"):
        return "LANGFUSE_SECRET_KEY holds a public key: put the sk-lf-… key there."
    return ""


def _langfuse_url(settings: Mapping[str, Setting]) -> tuple[str, str]:
    """Return Langfuse's base URL, and in words which variable it came from."""
    base, host = settings["LANGFUSE_BASE_URL"], settings["LANGFUSE_HOST"]
    _check_origin(base)
    if not host.value:
        return base.value.rstrip("/"), "both keys are set"
    _check_origin(host)
    if base.source != "default" and base.value.rstrip("/") != host.value.rstrip("/"):
        raise SettingsError(
            f"LANGFUSE_HOST ({host.value}) and LANGFUSE_BASE_URL ({base.value}) differ: "
            "remove LANGFUSE_HOST, the older name."
        )
    return host.value.rstrip("/"), "both keys are set; LANGFUSE_HOST is now LANGFUSE_BASE_URL"


def check_url(setting: Setting) -> SplitResult:
    """Return the parts of an http(s) address, or raise `SettingsError` if it is none."""
    _refuse_stray_characters(setting.name, setting.value)
    try:
        url = urlsplit(setting.value)
        usable = url.scheme in ("http", "https") and url.hostname and url.port != 0
    except ValueError:  # a port that is no number, an open bracket
        usable = False
    if not usable:
        raise SettingsError(  # without the value, which may hold a password
            f"{setting.name} is not the address of a server: write it whole, "
            "such as https://cloud.langfuse.com or http://localhost:11434/v1."
        )
    return url


def _check_origin(setting: Setting) -> None:
    url = check_url(setting)
    if url.username or url.query or url.fragment or re.search("/(project|api)/", url.path):
        port = f":{url.port}" if url.port else ""
        raise SettingsError(
            f"{setting.name} is more than an address: keep only "
            f"{url.scheme}://{url.hostname}{port}."
        )
