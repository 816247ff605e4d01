"""A local stand-in for the part of Langfuse's public API that SDK 5 uses, on SQLite.

It is not Langfuse: no accounts, no teams, no web application. It is for one person on
one machine, who wants to see a first trace before there is an account or a key.

`python -m local_langfuse` serves it until Ctrl-C; `start()` serves it from a thread of
the program that calls it.
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

HOST = "127.0.0.1"  # loopback only: the keys below are no secret
DEFAULT_PORT = 4747
DEFAULT_DB = ".local_langfuse/langfuse.db"  # seen from the top folder
PUBLIC_KEY = "pk-lf-local"
SECRET_KEY = "sk-lf-local"  # noqa: S105  printed at every start, and worthless elsewhere
KEYS = (PUBLIC_KEY, SECRET_KEY)
PROJECT = "local"
TOP = Path(__file__).resolve().parent.parent
# The field of the health answer that names our file; no other program has it.
MARKER = "local_langfuse"
LASTS = "lasts"  # beside it: whether the instance stays until somebody ends it


class CannotStart(RuntimeError):  # noqa: N818  reads as what happened: except CannotStart
    """Why the local instance does not start, and what to do: one line."""


@dataclass(frozen=True)
class LocalLangfuse:
    """A local instance that this process has started."""

    base_url: str  # where to send
    stop: Callable[[], None]  # ends it; a program that ends need not call it
    stored: int  # observations in the file at the start


@dataclass(frozen=True)
class Running:
    """What a local instance, of this process or another, says about itself."""

    file: str  # where it stores, as an absolute path
    lasts: bool  # False where it ends with the program that started it


def default_db() -> Path:
    """Return the file to use: LOCAL_LANGFUSE_DB, seen from the top folder of these examples."""
    return TOP / (os.environ.get("LOCAL_LANGFUSE_DB") or DEFAULT_DB)


def start(db: Path, port: int = 0, *, lasts: bool = True) -> LocalLangfuse:
    """Serve the SQLite file `db` from a daemon thread of this process.

    Port 0 takes a free one. On return the port is known and requests are answered.
    Raises `CannotStart` for a port that is taken and for a file that cannot be used.
    A program that will soon end passes `lasts=False`, and the instance tells who asks.

    Nothing has to be stopped at the end of a program: what was answered is stored, and
    the thread answers until Python is gone, so also the SDK's last flush.
    """
    # Imported here so that `import local_langfuse` costs nothing where it is not used.
    from local_langfuse.server import serve  # noqa: PLC0415

    return serve(db, port, lasts=lasts)


def running(where: int | str = DEFAULT_PORT) -> Running | None:
    """Return the local instance on this port or at this base URL, or None where there is none.

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
        raise ValueError("a local instance is nowhere else")
    return url.port or 80


def _health(port: int) -> Any:
    connection = http.client.HTTPConnection(HOST, port, timeout=0.3)
    try:
        connection.request("GET", "/api/public/health")
        return json.loads(connection.getresponse().read(10_000))
    finally:
        connection.close()


def find(db: Path, port: int, known: str = "") -> str:
    """Return the base URL of a running instance that stores in `db`, or "" where there is none.

    `known` is the base URL of one that this process or its parent has started. One that is
    found on the port must last: another would end in the middle of somebody else's program.
    """
    for url in filter(None, (known, f"http://{HOST}:{port}")):
        there = running(url)
        if there and there.file == str(db.resolve()) and (there.lasts or url == known):
            return url
    return ""


def start_inside(db: Path, port: int) -> tuple[LocalLangfuse, str]:
    """Start one that ends with this program, on a free port where `port` is taken.

    Returns it, and in words what holds the port. Raises `CannotStart` because of the file.
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
    """Keep a proxy out of what stays on this machine; raise `CannotStart` for an unusable one."""
    import httpx  # noqa: PLC0415  it takes longer to import than all of this

    proxies = [f"{name.upper()}_PROXY" for name in getproxies() if name in ("http", "https", "all")]
    try:
        httpx.Client(verify=False).close()  # noqa: S501  it sends nothing
        if any("socks" in url for url in getproxies().values()):
            import_module("socks")  # what `requests` needs, with which the SDK sends spans
    except (ImportError, ValueError, httpx.InvalidURL):
        raise CannotStart(
            f"{' or '.join(proxies)} cannot be used: a socks5:// proxy needs `pip install socksio "
            "pysocks`, any other an address that begins with http:// or https://."
        ) from None
    if proxies:
        hosts = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
        if hosts != "*":  # with anything beside it, `requests` takes it for the name of a host
            each = filter(None, hosts.split(","))
            hosts = ",".join(dict.fromkeys((*each, HOST, "localhost")))
        os.environ |= {"no_proxy": hosts, "NO_PROXY": hosts}  # libraries differ in which they read
