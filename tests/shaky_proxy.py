"""An HTTP proxy that can fail: before an S3 server, it makes the outages that stores must outlast."""

import contextlib
import http.client
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ports import kept_port

NOT_IMPLEMENTED = b"<Error><Code>NotImplemented</Code><Message>not implemented</Message></Error>"
KINDS = ("refused", "500", "503", "hanging", "cut short")  # and "damaged": a byte of what is sent


class ShakyProxy:
    """Pass requests on; `fault` is what happens to them instead, one of `KINDS`, or ""."""

    def __init__(self, server: str):
        self.fault = ""
        self.faults = 0  # requests that met it
        self.requests = 0
        self.without: dict[str, bool] = {}  # headers it drops or, if True, refuses with 501
        self._server = server.removeprefix("http://")
        self._kept = contextlib.ExitStack()
        self._address = ("127.0.0.1", self._kept.enter_context(kept_port()))
        self._recovery: threading.Timer | None = None
        self._lock = threading.Lock()
        self._listen()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._address[1]}"

    def _listen(self) -> None:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                with contextlib.suppress(ConnectionError):
                    super().handle_one_request()

            def do_GET(self) -> None:
                proxy._handle(self)

            do_PUT = do_POST = do_HEAD = do_DELETE = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(self._address, Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        self.requests += 1
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if fault := self.fault:
            self.faults += 1
            self._recover_soon()
        if fault == "hanging":
            threading.Event().wait(1)
        if fault in ("refused", "hanging"):
            request.close_connection = True
            return
        if fault in ("500", "503"):
            request.send_response(int(fault))
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        if fault == "damaged" and body:
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        known = {name: value for name, value in request.headers.items() if name not in self.without}
        if any(self.without.get(name) for name in request.headers.keys() - known.keys()):
            content = NOT_IMPLEMENTED
            request.send_response(501)
            request.send_header("Content-Length", str(len(content)))
            request.end_headers()
            request.wfile.write(content)
            return
        connection = http.client.HTTPConnection(self._server, timeout=60)
        connection.request(request.command, request.path, body, known)
        answer = connection.getresponse()
        content = answer.read()
        request.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection"):
                request.send_header(name, value)
        request.end_headers()
        if fault == "cut short":
            content = content[: len(content) // 2]
            request.close_connection = True
        request.wfile.write(content)
        connection.close()

    @contextlib.contextmanager
    def failing(self, fault: str, seconds: float | None = None) -> Iterator[None]:
        """Fail for some seconds from the first request on, or until the end of the block."""
        self._recovery = threading.Timer(seconds, self._recover) if seconds else None
        self.fault = fault
        if fault == "refused":
            self._close_server()
            self._recover_soon()  # it does not see the first request
        try:
            yield
        finally:
            if self._recovery and self._recovery.ident:
                self._recovery.cancel()
                self._recovery.join()
            self._recover()

    def _recover_soon(self) -> None:
        with self._lock:
            if self._recovery and not self._recovery.ident:
                self._recovery.start()

    def _recover(self) -> None:
        with self._lock:
            if self.fault == "refused":
                self._listen()
            self.fault = ""

    def _close_server(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def close(self) -> None:
        self._close_server()
        self._kept.close()
