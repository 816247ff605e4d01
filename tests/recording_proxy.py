"""An HTTP server between a script and Langfuse that keeps what was sent, byte for byte."""

import gzip
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx


@dataclass(frozen=True)
class Sent:
    """One request; the body is unpacked, and otherwise as it came."""

    method: str
    path: str
    headers: str
    body: bytes

    @property
    def everything(self) -> bytes:
        return f"{self.method} {self.path}\n{self.headers}\n".encode() + self.body


class Proxy(ThreadingHTTPServer):
    """Passes requests on to `target`; `before` is called with each one first."""

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.client = httpx.Client(base_url=target, timeout=60, trust_env=False)
        self.sent: list[Sent] = []
        self.before: Callable[[Sent], None] = lambda _: None
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a script that was killed does not read its answer."""


class _Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length", 0)))
        packed = self.headers.get("content-encoding") == "gzip"
        body = gzip.decompress(raw) if packed else raw
        sent = Sent(self.command, self.path, str(self.headers), body)
        self.server.sent.append(sent)
        self.server.before(sent)
        own = ("host", "content-length", "connection", "accept-encoding")
        headers = {k: v for k, v in self.headers.items() if k.lower() not in own}
        answer = self.server.client.request(self.command, self.path, headers=headers, content=raw)
        self.send_response(answer.status_code)
        self.send_header("content-type", answer.headers.get("content-type", "text/plain"))
        self.send_header("content-length", str(len(answer.content)))
        self.end_headers()
        with suppress(ConnectionError):
            self.wfile.write(answer.content)

    do_GET = do_POST = do_DELETE = do_PATCH = _pass_on  # noqa: N815  the names are the library's

    def log_message(self, *_: Any) -> None:
        """Keep the test's output to itself."""


@contextmanager
def proxy_to(target: str) -> Iterator[Proxy]:
    """Serve until the block ends."""
    proxy = Proxy(target)
    thread = threading.Thread(target=proxy.serve_forever)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()
        proxy.client.close()
