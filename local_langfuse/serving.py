"""An ASGI application in a thread of this process, for both stand-ins.

Each server has a thread and an event loop of its own: a large batch on one must not hold
up the other. Requests are handled on the loop alone. The SDK's last flush comes while
Python shuts down, when no thread can be started any more, so nothing that answers a
request may hand work to one: no plain `def` endpoints, no thread pool, no name look-ups.
"""

import asyncio
import os
import socket
import threading
import weakref
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from local_langfuse import HOST, CannotStart

_listening: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def listen(port: int, remedy: str) -> socket.socket:
    """Return a socket that listens on loopback; port 0 takes a free one.

    Raises `CannotStart` for a port that is taken; `remedy` says how to choose another.
    """
    # With its protocol named, asyncio switches off the delay of small packets, which would
    # cost every answer 40 ms.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # elsewhere this would allow two servers on one port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, port))
        listening.listen()
    except (OSError, OverflowError) as error:
        listening.close()
        raise CannotStart(
            f"cannot listen on {HOST}:{port} ({error}): stop what listens there, or choose "
            f"another port with {remedy}"
        ) from None
    _listening.add(listening)
    return listening


def serve(app: ASGIApp, listening: socket.socket, name: str) -> Callable[[], None]:
    """Serve the application from a daemon thread until the returned function is called.

    On return, requests are answered. A program that ends need not stop the server: the
    thread answers until Python is gone.
    """
    server = _Server(
        uvicorn.Config(
            app,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,  # the program around it owns the logging
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=2,
        )
    )

    def run() -> None:
        try:
            asyncio.run(server.serve(sockets=[listening]))
        finally:
            server.ready.set()  # also where it failed: nobody shall wait forever

    # A daemon: it must outlive the main thread's last line, and must not hold Python up.
    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    server.ready.wait()

    def stop() -> None:
        server.should_exit = True
        thread.join()
        listening.close()

    return stop


class _Server(uvicorn.Server):
    """uvicorn in a thread, telling when it answers."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, *args: Any, **options: Any) -> None:
        """Start to answer, and say so."""
        await super().startup(*args, **options)
        self.ready.set()


def _close_inherited() -> None:
    """Close the listeners that a forked child has inherited without the thread behind them.

    Left open, they would keep the port of a parent that is gone: connections would be
    accepted by the system, and wait for an answer until their timeout.
    """
    for listening in list(_listening):
        listening.close()
    _listening.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)
