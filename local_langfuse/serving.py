"""Run an ASGI application in a thread of this process, for both stand-ins.

Each server has its own thread and event loop, so that a large batch on one does not hold
up the other. Requests are handled only on the loop. The SDK's last flush comes while
Python is shutting down and can start no more threads. So nothing that answers a request
may need a new thread: no plain `def` endpoints, no thread pool, no name look-ups.
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
    """Return a socket that listens on loopback; port 0 picks a free one.

    Raises `CannotStart` if the port is taken; `remedy` says how to choose another.
    """
    # asyncio turns off the delay of small packets only if the protocol is named. The delay
    # would add 40 ms to every answer.
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

    When this returns, requests are answered. You need not stop the server when your program
    ends: the thread goes on until Python exits.
    """
    server = _Server(
        uvicorn.Config(
            app,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,  # logging belongs to the program around it
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
            server.ready.set()  # even if it failed: nobody should wait forever

    # A daemon: it must outlive the main thread's last line, but must not keep Python alive.
    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    server.ready.wait()

    def stop() -> None:
        server.should_exit = True
        thread.join()
        listening.close()

    return stop


class _Server(uvicorn.Server):
    """uvicorn in a thread; it says when it is ready."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, *args: Any, **options: Any) -> None:
        """Start answering, and say so."""
        await super().startup(*args, **options)
        self.ready.set()


def _close_inherited() -> None:
    """Close the listeners that a forked child inherits without the threads behind them.

    Left open, they would keep the port after the parent is gone: the system would accept
    connections, and they would wait for an answer until they time out.
    """
    for listening in list(_listening):
        listening.close()
    _listening.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)
