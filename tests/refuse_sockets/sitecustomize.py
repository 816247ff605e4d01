"""Loaded by Python at its start when this folder is on PYTHONPATH: refuses connections.

`REFUSE_SOCKETS=all` refuses every one, `internet` those that leave this machine. Each
refused attempt is written to `REFUSED_SOCKETS_FILE`.
"""

import os
import sys
from pathlib import Path

REFUSE_ALL = os.environ["REFUSE_SOCKETS"] == "all"
LOG = Path(os.environ["REFUSED_SOCKETS_FILE"])
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def _refuse(event: str, args: tuple[object, ...]) -> None:
    if event == "socket.getaddrinfo":
        target = args[0]
    elif event in ("socket.connect", "socket.sendto"):
        address = args[1]
        target = address[0] if isinstance(address, tuple) else address
    else:
        return
    if REFUSE_ALL or target not in LOOPBACK:
        with LOG.open("a") as log:
            log.write(f"{event} {target}\n")
        raise ConnectionRefusedError(f"refused by the test: {event} {target}")


sys.addaudithook(_refuse)
