"""The settings: where each value came from, and what is wrong with it, if anything.

Nothing here opens a connection or prints. A mistake raises a `SettingsError`: one line
that names the variable and the fix.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple
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
    "LANGFUSE_DEBUG": "false",
    "LOCAL_LANGFUSE_PORT": "4747",
    "LOCAL_LANGFUSE_DB": ".local_langfuse/langfuse.db",
    "OPENAI_API_KEY": "",
    "OPENAI_BASE_URL": "",
    "OPENAI_MODEL": "gpt-6-luna",
    "OPENAI_EMBEDDING_MODEL": "text-embedding-3-small",
}


class SettingsError(ValueError):
    """A setting cannot be used; the message names the variable and the fix."""


class Setting(NamedTuple):
    """One variable: its value, and whether it came from the environment, `.env` or a default."""

    name: str
    value: str
    source: str

    @property
    def shown(self) -> str:
        """The value, safe to print: a key shows only enough for you to recognise it."""
        return masked(self.value) if self.name.endswith("_KEY") else self.value


class Destination(NamedTuple):
    """Where traces go: disabled, langfuse or local; `why` gives the reason in a few words."""

    mode: str
    why: str
    base_url: str = ""


def masked(key: str) -> str:
    """`masked("pk-lf-0c8ae1d2-1234") -> "pk-lf-…1234"`; a short key is hidden completely."""
    shown = next((p for p in ("pk-lf-", "sk-lf-", "sk-") if key.startswith(p)), "")
    end = key[-4:] if len(key) - len(shown) >= 12 else ""
    return f"{shown}…{end}" if key else ""


def set_by_connect() -> dict[str, str]:
    """Return what `connect()` put into the environment, here or in a parent process."""
    with suppress(ValueError, TypeError):
        return dict(json.loads(os.environ.get(MARK, "{}")))
    return {}


@cache
def read_settings(env_file: Path = TOP / ".env") -> Mapping[str, Setting]:
    """Load `.env` into the environment and return every setting with its source.

    A variable that is already set wins over `.env`. A variable that is empty, or that
    `connect()` set in a parent process, counts as not set.
    """
    ours = set_by_connect()

    def given() -> set[str]:
        """Return the names that have a value; unset the others, or the SDK would read them."""
        values = {name: os.environ.get(name, "") for name in DEFAULTS}
        names = {n for n, value in values.items() if value.strip() and value != ours.get(n)}
        for name in DEFAULTS.keys() - names:
            os.environ.pop(name, None)
        return names

    already = given()
    try:
        load_dotenv(env_file)
    except UnicodeDecodeError as error:
        raise SettingsError(f"{env_file} is not UTF-8: save it as UTF-8.") from error
    source = dict.fromkeys(given(), ".env") | dict.fromkeys(already, "environment")
    return {
        name: Setting(name, os.environ.get(name, default), source.get(name, "default"))
        for name, default in DEFAULTS.items()
    }


def choose_destination(settings: Mapping[str, Setting]) -> Destination:
    """Decide where traces go, or raise `SettingsError` for a mistake in the settings."""
    value = {name: setting.value for name, setting in settings.items()}
    for name, (has_form, wanted) in _FORMS.items():
        with suppress(ValueError):
            if has_form(value[name]):
                continue
        raise SettingsError(f"{name} is {_quoted(value[name])}: set it to {wanted}.")
    if value["LANGFUSE_TRACING_ENABLED"].lower() == "false":
        return Destination("disabled", "LANGFUSE_TRACING_ENABLED is false")
    for setting in settings.values():
        _refuse_stray_characters(setting)
    public, secret = value["LANGFUSE_PUBLIC_KEY"], value["LANGFUSE_SECRET_KEY"]
    if not public and not secret:
        return Destination("local", "no Langfuse keys are set")
    for is_wrong, mistake in (
        (not secret, "SECRET_KEY is missing: set it, or unset LANGFUSE_PUBLIC_KEY to stay local"),
        (not public, "PUBLIC_KEY is missing: set it, or unset LANGFUSE_SECRET_KEY to stay local"),
        (
            public.startswith("sk-lf-") and secret.startswith("pk-lf-"),
            "PUBLIC_KEY and LANGFUSE_SECRET_KEY are swapped: exchange their values",
        ),
        (public.startswith("sk-"), "PUBLIC_KEY holds a secret key: put the pk-lf-… key there"),
        (secret.startswith("pk-"), "SECRET_KEY holds a public key: put the sk-lf-… key there"),
    ):
        if is_wrong:
            raise SettingsError(f"LANGFUSE_{mistake}.")
    return _langfuse(settings["LANGFUSE_BASE_URL"], settings["LANGFUSE_HOST"])


def _refuse_stray_characters(setting: Setting) -> None:
    name, value, _ = setting
    if any(quote in value for quote in "\"'`"):
        raise SettingsError(f"{name} has quotes in its value: remove them.")
    if re.search(r"\s", value) and name not in ("LOCAL_LANGFUSE_DB", "LANGFUSE_RELEASE"):
        raise SettingsError(f"{name} has a space or line break in its value: remove it.")
    if name.endswith(("_KEY", "_URL", "_HOST")) and not value.isascii():
        raise SettingsError(f"{name} has a character that no key or address has: copy it again.")


def _quoted(value: str) -> str:
    # A key pasted into the wrong variable must not end up on the screen.
    return masked(value) if re.match(r"(pk|sk)-", value) or "@" in value else repr(value)


_LABEL = re.compile(r"(?!langfuse)[a-z0-9_-]{1,40}")
# What each value must look like: the SDK would end in a traceback or misread it.
_FORMS: dict[str, tuple[Callable[[str], object], str]] = {
    "LANGFUSE_TRACING_ENABLED": (lambda v: v.lower() in ("true", "false"), "true or false"),
    "LANGFUSE_TRACING_ENVIRONMENT": (
        _LABEL.fullmatch,
        "at most 40 lower-case letters, digits, - and _, not beginning with langfuse",
    ),
    "LANGFUSE_SAMPLE_RATE": (lambda v: 0 <= float(v) <= 1, "a number from 0 to 1"),
    "LANGFUSE_FLUSH_AT": (lambda v: int(v) > 0, "a whole number above 0"),
    "LANGFUSE_FLUSH_INTERVAL": (lambda v: 0 < float(v) < 1e6, "a number of seconds above 0"),
    "LANGFUSE_TIMEOUT": (lambda v: int(v) > 0, "a whole number of seconds above 0"),
    "LANGFUSE_DEBUG": (lambda v: v.lower() in ("true", "false"), "true or false"),
    "LOCAL_LANGFUSE_PORT": (lambda v: 0 < int(v) < 65536, "a port from 1 to 65535"),
}


def _langfuse(base: Setting, host: Setting) -> Destination:
    for setting in (base, host) if host.value else (base,):
        url = check_url(setting)
        if url.username or url.query or url.fragment or re.search("/(project|api)/", url.path):
            origin = f"{url.scheme}://{url.hostname}{f':{url.port}' if url.port else ''}"
            raise SettingsError(f"{setting.name} is more than an address: keep only {origin}.")
    if not host.value:
        return Destination("langfuse", "both keys are set", base.value.rstrip("/"))
    if base.source != "default" and base.value.rstrip("/") != host.value.rstrip("/"):
        raise SettingsError(
            f"LANGFUSE_HOST ({host.value}) and LANGFUSE_BASE_URL ({base.value}) differ: "
            "remove LANGFUSE_HOST, the older name."
        )
    why = "both keys are set; LANGFUSE_HOST is now LANGFUSE_BASE_URL"
    return Destination("langfuse", why, host.value.rstrip("/"))


def check_url(setting: Setting) -> SplitResult:
    """Return the parts of an http(s) address, or raise `SettingsError` if it is not one."""
    _refuse_stray_characters(setting)
    with suppress(ValueError):  # such as a port that is not a number
        url = urlsplit(setting.value)
        if url.scheme in ("http", "https") and url.hostname and url.port != 0:
            return url
    raise SettingsError(  # without the value, which may hold a password
        f"{setting.name} is not the address of a server: write it in full, "
        "such as https://cloud.langfuse.com or http://localhost:11434/v1."
    )
