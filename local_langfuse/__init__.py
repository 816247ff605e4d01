"""A local stand-in, on SQLite, for the part of Langfuse's public API that SDK 5 uses.

It is not Langfuse: it has no accounts, no teams, no web application. It is for one person
on one machine who wants to see a first trace without an account or a key.

`python -m local_langfuse` runs it until Ctrl-C; `start()` runs it in a thread of the
program that calls it.
"""

import http.client
import json
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

HOST = "127.0.0.1"  # loopback only: the keys below are not secret
DEFAULT_PORT = 4747
DEFAULT_DB = ".local_langfuse/langfuse.db"  # relative to the top folder
PUBLIC_KEY = "pk-lf-local"
SECRET_KEY = "sk-lf-local"  # noqa: S105  printed at every start, and useless elsewhere
KEYS = (PUBLIC_KEY, SECRET_KEY)
PROJECT = "local"
TOP = Path(__file__).resolve().parent.parent
# The field in the health answer that names our file; no other program sends it.
MARKER = "local_langfuse"
LASTS = "lasts"  # next to it: whether the instance runs until somebody stops it


class CannotStart(RuntimeError):  # noqa: N818  reads as what happened: except CannotStart
    """Says in one line why the local instance does not start, and what to do."""


@dataclass(frozen=True)
class LocalLangfuse:
    """A local instance that this process started."""

    base_url: str  # where to send
    stop: Callable[[], None]  # ends it; you need not call it before your program ends
    stored: int  # observations in the file when it started


@dataclass(frozen=True)
class Running:
    """What a local instance says about itself, in this process or another."""

    file: str  # the absolute path of its file
    lasts: bool  # False if it ends with the program that started it


def default_db() -> Path:
    """Return the file to use: LOCAL_LANGFUSE_DB, relative to the top folder of these examples."""
    return TOP / (os.environ.get("LOCAL_LANGFUSE_DB") or DEFAULT_DB)


def start(db: Path, port: int = 0, *, lasts: bool = True) -> LocalLangfuse:
    """Serve the SQLite file `db` from a daemon thread of this process.

    Port 0 picks a free one. When this returns, requests are answered. Raises `CannotStart`
    if the port is taken or the file cannot be used. Pass `lasts=False` in a program that
    will soon end: the instance then says so to anyone who asks.

    You need not stop it when your program ends: everything it answered is stored, and the
    thread goes on until Python exits, so it also answers the SDK's last flush.
    """
    # Imported here so that `import local_langfuse` costs nothing if it is not used.
    from local_langfuse.server import serve  # noqa: PLC0415

    return serve(db, port, lasts=lasts)


def running(where: int | str = DEFAULT_PORT) -> Running | None:
    """Return the local instance on this port or at this base URL, or None if there is none.

    `running("http://127.0.0.1:4747") -> Running(file="/home/ada/langfuse.db", lasts=True)`
    """
    try:
        port = where if isinstance(where, int) else _port_of(where)
        health = _health(port)
    except (OSError, OverflowError, ValueError, RecursionError, http.client.HTTPException):
        return None
    file = health.get(MARKER) if isinstance(health, dict) else None
    return Running(file, health.get(LASTS) is not False) if file and isinstance(file, str) else None


def _port_of(base_url: str) -> int:
    url = urlsplit(base_url)
    if url.scheme != "http" or url.hostname not in (HOST, "localhost"):
        raise ValueError("a local instance is only on this machine")
    return url.port or 80


def _health(port: int) -> Any:
    connection = http.client.HTTPConnection(HOST, port, timeout=0.3)
    try:
        connection.request("GET", "/api/public/health")
        return json.loads(connection.getresponse().read(10_000))
    finally:
        connection.close()


def find(db: Path, port: int, known: str = "") -> str:
    """Return the base URL of a running instance that stores in `db`, or "" if there is none.

    `known` is the base URL of one that this process or its parent started. Any other one, on
    the port, must last: if it ended with its own program, it could stop in the middle of ours.
    """
    for url in filter(None, (known, f"http://{HOST}:{port}")):
        there = running(url)
        if there and there.file == str(db.resolve()) and (there.lasts or url == known):
            return url
    return ""


def start_inside(db: Path, port: int) -> tuple[LocalLangfuse, str]:
    """Start one that ends with this program, on a free port if `port` is taken.

    Also returns what has the port, in words. Raises `CannotStart` if the file cannot be used.
    """
    try:
        return start(db, port, lasts=False), ""
    except CannotStart:
        there = running(port)
        holder = f"a local Langfuse with the file {there.file}" if there else "another program"
        return start(db, lasts=False), holder


def command(base_url: str, db: Path) -> str:
    """Return the command that serves this file at this address again.

    `command("http://127.0.0.1:5000", default_db()) -> "python -m local_langfuse --port 5000"`
    """
    words = [os.path.relpath(sys.executable), "-m", "local_langfuse"]
    if (port := _port_of(base_url)) != DEFAULT_PORT:
        words += ["--port", str(port)]
    if db.resolve() != (TOP / DEFAULT_DB).resolve():
        words += ["--db", str(db)]
    return shlex.join(words)


def reach_directly() -> None:
    """Bypass any proxy for what stays on this machine; raise `CannotStart` if it is unusable."""
    import httpx  # noqa: PLC0415  it takes longer to import than all of this

    proxies = [f"{name.upper()}_PROXY" for name in getproxies() if name in ("http", "https", "all")]
    try:
        httpx.Client(verify=False).close()  # noqa: S501  it sends nothing
        if any("socks" in url for url in getproxies().values()):
            import_module("socks")  # needed by `requests`, which the SDK sends spans with
    except (ImportError, ValueError, httpx.InvalidURL):
        raise CannotStart(
            f"{' or '.join(proxies)} cannot be used: a socks5:// proxy needs `pip install socksio "
            "pysocks`; any other needs an address that begins with http:// or https://."
        ) from None
    if proxies:
        hosts = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
        if hosts != "*":  # with anything beside it, `requests` takes it for the name of a host
            each = filter(None, hosts.split(","))
            hosts = ",".join(dict.fromkeys((*each, HOST, "localhost")))
        os.environ |= {"no_proxy": hosts, "NO_PROXY": hosts}  # libraries differ in which they read
