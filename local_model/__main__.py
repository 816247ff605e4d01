"""Run the local model until Ctrl-C: `python -m local_model [--port 4748]`."""

import argparse
import signal
import sys
import threading

from local_langfuse import HOST, CannotStart
from local_model import API_KEY, DEFAULT_PORT, is_running, start

ABOUT = "This is not OpenAI: it is a local stand-in that repeats sentences from its prompt."


def main() -> int:
    """Serve until Ctrl-C or SIGTERM; if that fails, write one line to stderr and return 2."""
    options = argparse.ArgumentParser(prog="python -m local_model", description=ABOUT)
    told = "the port (default: %(default)s)"
    options.add_argument("--port", default=str(DEFAULT_PORT), help=told)
    try:
        return _serve(_port(options.parse_args().port))
    except CannotStart as error:
        sys.stderr.write(f"local_model: {error}\n")
        return 2


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:6]) <= 65535):
        raise CannotStart(
            f"port {text!r} is not a number from 0 (any free port) to 65535: correct --port"
        )
    return int(text)


def _serve(port: int) -> int:
    if port and is_running(f"http://{HOST}:{port}/v1"):
        sys.stdout.write(f"Already running on port {port}: nothing to do.\n")
        return 0
    asked_to_end = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked_to_end.set())
    running = start(port)
    sys.stdout.write(
        f"{ABOUT}\n"
        f"Listening on {running.base_url}   (Ctrl-C stops it)\n"
        "To point a program at it:\n"
        f"  export OPENAI_BASE_URL={running.base_url} OPENAI_API_KEY={API_KEY}\n"
        "  export OPENAI_MODEL=gpt-6-luna OPENAI_EMBEDDING_MODEL=text-embedding-3-small\n"
    )
    sys.stdout.flush()
    while not asked_to_end.wait(0.5):  # Windows cannot interrupt a wait without a timeout
        pass
    running.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
