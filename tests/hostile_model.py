"""A server of OpenAI's protocol that goes wrong in one way."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
NOTHING = {"prompt_tokens": None, "completion_tokens": None, "total_tokens": None}
REFUSED: dict[str, tuple[str, ...]] = {  # fields that make a request fail with 400
    "refuses tools": ("tools",),
    "refuses forms": ("response_format",),
    "refuses stream options": ("stream_options",),
}
CALLS: dict[str, tuple[str, str]] = {  # what the model asks for: a tool, and its arguments
    "broken arguments": ("look_up_order", '{"order_id": "A-1042"'),
    "other arguments": ("look_up_order", '{"id": "A-1042", "loud": true}'),
    "no arguments": ("look_up_order", "null"),
    "unknown tool": ("delete_everything\x1b[2J", "{}"),
}
WAYS = [
    *("well", "no usage", "null usage", "no choices", "null content", "a page", "a sign-in page"),
    *("an error in the stream", "a cut stream", "empty", "busy", "endless"),
    *("no responses", "no embeddings", *REFUSED, *CALLS),
]


def chat(way: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": "Yes."}
    if way == "null content":
        message["content"] = None
    if way in CALLS:
        name, arguments = CALLS[way]
        function = {"name": name, "arguments": arguments}
        message["tool_calls"] = [{"id": "c", "type": "function", "function": function}]
    body: dict[str, Any] = {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "other",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": USAGE,
    }
    return body | wrong(way)


def wrong(way: str) -> dict[str, Any]:
    fields: dict[str, dict[str, Any]] = {
        "no usage": {"usage": None},
        "null usage": {"usage": NOTHING},
        "no choices": {"choices": []},
    }
    return fields.get(way, {})


def response(way: str, asked: dict[str, Any]) -> dict[str, Any]:
    text = {"type": "output_text", "text": "Yes.", "annotations": []}
    output: list[dict[str, Any]] = [
        {
            "type": "message",
            "id": "m",
            "role": "assistant",
            "status": "completed",
            "content": [text],
        }
    ]
    if way in CALLS and asked.get("tools") and asked.get("tool_choice") != "none":
        name, arguments = CALLS[way]
        call = {"type": "function_call", "id": "f", "call_id": "c", "status": "completed"}
        output = [{**call, "name": name, "arguments": arguments}]
    usage = {"input_tokens": 9, "output_tokens": 2, "total_tokens": 11}
    body: dict[str, Any] = {
        "id": "r",
        "object": "response",
        "created_at": 1,
        "model": "other",
        "status": "completed",
        "output": [] if way in ("no choices", "null content") else output,
        "usage": usage,
    }
    return body | ({"usage": None} if way in ("no usage", "null usage") else {})


class Handler(BaseHTTPRequestHandler):
    way = "well"
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(404, {"error": {"message": "not here"}})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kind = self.path.rsplit("/", 1)[-1]
        refused = [field for field in REFUSED.get(self.way, ()) if field in asked]
        if self.way == "empty":
            self.send(200, "application/json", b"")
        elif self.way == "a page":
            self.send(200, "text/html", b"<html>Welcome</html>")
        elif self.way == "a sign-in page":
            self.send(403, "text/html", b"<html>\n<body>Please sign in</body></html>")
        elif self.way == "busy":
            self.answer(503, {"error": {"message": "overloaded"}})
        elif self.way == f"no {kind}" or (self.way == "no embeddings" and kind == "embeddings"):
            self.answer(404, {"error": {"message": f"/v1/{kind} is not here"}})
        elif refused:
            self.answer(400, {"error": {"message": f"{refused[0]} is not supported"}})
        elif kind == "embeddings":
            texts = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
            data = [{"index": i, "embedding": [1.0, float(i)]} for i in range(len(texts))]
            used = wrong(self.way).get("usage", {"prompt_tokens": 3, "total_tokens": 3})
            self.answer(200, {"object": "list", "model": "other", "data": data, "usage": used})
        elif asked.get("stream"):
            self.stream(kind, asked)
        else:
            body = response(self.way, asked) if kind == "responses" else chat(self.way)
            self.answer(200, body)

    def stream(self, kind: str, asked: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        head = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "other"}
        word = {**head, "choices": [{"index": 0, "delta": {"content": "Yes "}}]}
        if kind == "responses":
            place = {"item_id": "m", "output_index": 0, "content_index": 0, "sequence_number": 1}
            word = {"type": "response.output_text.delta", "delta": "Yes ", **place, "logprobs": []}
        try:
            if self.way != "no choices":
                self.event(word)
            while self.way == "endless":
                self.event(word)
            if self.way == "an error in the stream":
                self.event({"type": "error", "error": {"message": "out of memory"}})
            elif self.way != "a cut stream":
                whole = {"type": "response.completed", "response": response(self.way, asked)}
                last = {**head, "choices": [], "usage": chat(self.way)["usage"]}
                self.event(whole if kind == "responses" else last)
                self.wfile.write(b"data: [DONE]\n\n")
        except OSError:  # the client has left
            pass
        self.close_connection = True

    def event(self, body: dict[str, Any]) -> None:
        kind = f"event: {body['type']}\n" if "type" in body else ""
        self.wfile.write(f"{kind}data: {json.dumps(body)}\n\n".encode())
        self.wfile.flush()

    def answer(self, status: int, body: dict[str, Any]) -> None:
        self.send(status, "application/json", json.dumps(body).encode())

    def send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def going_wrong(way: str) -> Iterator[str]:
    """Serve one way of going wrong, and yield the address for OPENAI_BASE_URL."""
    handler = type("Handler", (Handler,), {"way": way})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
