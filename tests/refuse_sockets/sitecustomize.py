"""Loaded by Python at its start when this folder is on PYTHONPATH: refuses connections.

`REFUSE_SOCKETS=all` refuses every one but those to the model that `connect()` has put into
the environment, `internet` those that leave this machine. Each refused attempt is written to
`REFUSED_SOCKETS_FILE`.
"""

import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

REFUSE_ALL = os.environ["REFUSE_SOCKETS"] == "all"
LOG = Path(os.environ["REFUSED_SOCKETS_FILE"])
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def _refuse(event: str, args: tuple[object, ...]) -> None:
    if event == "socket.getaddrinfo":
        target = args[:2]
    elif event in ("socket.connect", "socket.sendto"):
        target = args[1][:2] if isinstance(args[1], tuple) else (args[1], None)
    else:
        return
    model = urlsplit(os.environ.get("OPENAI_BASE_URL", ""))
    if REFUSE_ALL and target == (model.hostname, model.port):
        return
    if REFUSE_ALL or target[0] not in LOOPBACK:
        with LOG.open("a") as log:
            log.write(f"{event} {target}\n")
        raise ConnectionRefusedError(f"refused by the test: {event} {target}")


sys.addaudithook(_refuse)
