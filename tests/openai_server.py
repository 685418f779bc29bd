"""A small OpenAI-compatible server on the loopback, which can be busy and failing at first."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """Answers with the seed of each request; before that, with what `troubles` lists.

    Attributes:
        troubles: status and headers of the first answers; status 0 closes the connection.
        delay: seconds that each answer takes.
        together: requests that must have come before one is answered.
        content: what each seed is answered with.
        asked: path, authorization, body and time of each request.
        most_at_once: requests that were being answered at the same time.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.troubles: list[tuple[int, dict[str, str]]] = []
        self.delay = 0.0
        self.together = 1
        self.content: Callable[[int], str | None] = "text of seed {}".format
        self.known: set[str] | None = None  # fields it takes, where it refuses the others
        self.answer: Any = None  # JSON, or a page, that it answers with instead
        self.asked: list[tuple[str, str, dict[str, Any], float]] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Condition()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
            authorization = self.headers["Authorization"]
            server.asked.append((self.path, authorization, body, time.monotonic()))
            status, headers = server.troubles.pop(0) if server.troubles else (200, {})
            server.lock.notify_all()
            server.lock.wait_for(lambda: len(server.asked) >= server.together, 60)
        time.sleep(server.delay)
        with server.lock:
            server.at_once -= 1
        if not status:
            self.close_connection = True
            return
        unknown = sorted(body.keys() - server.known) if server.known else []
        if unknown:
            status = 422
        said = server.content(body["seed"])
        text = said and f"{said} at {body['temperature']}"
        reason = "length" if body["seed"] % 2 else "stop"
        said = {"message": {"role": "assistant", "content": text}, "text": text}
        answer = {
            "id": "1", "object": "text_completion", "created": 0, "model": body["model"],
            "choices": [{"index": 0, "finish_reason": reason, **said}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 8, "total_tokens": 11},
        }  # fmt: skip
        wrong = {"error": {"message": f"no, {authorization}, no", "type": "x", "code": status}}
        if unknown:
            wrong = {"detail": f"Unexpected fields in the request: {unknown}"}
        answer = server.answer or answer
        content = json.dumps(answer if status == 200 else wrong).encode()
        kind = "application/json"
        if isinstance(server.answer, str):
            content, kind = server.answer.encode(), "text/html"
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format, *args):
        pass


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """Run a server in a thread."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
