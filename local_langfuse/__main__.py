"""Run the local instance until Ctrl-C: `python -m local_langfuse [--port 4747] [--db FILE]`."""

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

from dotenv import load_dotenv

from local_langfuse import (
    DEFAULT_PORT,
    PUBLIC_KEY,
    SECRET_KEY,
    TOP,
    CannotStart,
    default_db,
    running,
    start,
)

ABOUT = "This is not Langfuse: it is a local stand-in for one person on one machine."


def main() -> int:
    """Serve until Ctrl-C or SIGTERM; if that fails, write one line to stderr and return 2."""
    load_dotenv(TOP / ".env")  # the lessons read it too, and print links to its port
    options = argparse.ArgumentParser(prog="python -m local_langfuse", description=ABOUT)
    port = os.environ.get("LOCAL_LANGFUSE_PORT") or DEFAULT_PORT
    options.add_argument("--port", default=port, help="the port (default: %(default)s)")
    db = default_db()
    options.add_argument("--db", type=Path, default=db, help="the file (default: %(default)s)")
    given = options.parse_args()
    try:
        return _serve(_port(str(given.port)), given.db)
    except CannotStart as error:
        sys.stderr.write(f"local_langfuse: {error}\n")
        return 2


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:6]) <= 65535):
        raise CannotStart(
            f"port {text!r} is not a number from 0 (any free port) to 65535: "
            "correct --port or LOCAL_LANGFUSE_PORT"
        )
    return int(text)


def _serve(port: int, db: Path) -> int:
    if port and (there := running(port)):
        if not there.lasts:
            raise CannotStart(
                f"port {port} is taken by a program that serves {there.file} until it ends: "
                "wait for it, or choose another port with --port"
            )
        if there.file != str(db.resolve()):
            raise CannotStart(
                f"port {port} is taken by another local instance, which stores in {there.file}: "
                "stop it, or choose another port with --port"
            )
        sys.stdout.write(f"Already running on port {port}, with {there.file}: nothing to do.\n")
        return 0
    asked_to_end = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked_to_end.set())
    served = start(db, port)
    sys.stdout.write(
        f"{ABOUT}\n"
        f"Listening on {served.base_url}   (Ctrl-C stops it)\n"
        "The lessons find it by themselves. To point another program at it:\n"
        f"  export LANGFUSE_BASE_URL={served.base_url}\n"
        f"  export LANGFUSE_PUBLIC_KEY={PUBLIC_KEY} LANGFUSE_SECRET_KEY={SECRET_KEY}\n"
        f"Data: {db}, {served.stored} observations\n"
    )
    sys.stdout.flush()
    while not asked_to_end.wait(0.5):  # Windows cannot interrupt a wait without a timeout
        pass
    served.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
