"""Around every request: a limit of its size, a token, and metrics."""

import hmac
import time
from typing import Any

from fastapi import HTTPException
from fastapi.responses import JSONResponse

from expandr_core.serving.metrics import Metrics

OPEN = ("/", "/health")  # without a token: the page asks for it, and probes have none


class Guard:
    """An ASGI middleware; see the module."""

    def __init__(self, app: Any, metrics: Metrics, token: str, body_bytes: int):
        """Guard an application; an empty token lets everybody in."""
        self._app, self._metrics = app, metrics
        self._token, self._body_bytes = token.encode(), body_bytes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, start, received = 500, time.perf_counter(), 0

        async def watched(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        async def limited() -> Any:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._body_bytes:
                raise HTTPException(413, self._too_long)
            return message

        try:
            refused = self._refused(scope)
            if refused:
                await refused(scope, receive, watched)
            else:
                await self._app(scope, limited, watched)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(path, status).inc()
            self._metrics.seconds.labels(path).observe(time.perf_counter() - start)

    def _refused(self, scope: Any) -> JSONResponse | None:
        headers = dict(scope["headers"])
        said = headers.get(b"content-length", b"0")
        if not said.isdigit() or int(said[:18]) > self._body_bytes:
            return JSONResponse({"detail": self._too_long}, 413)
        if not self._token or scope["path"] in OPEN:
            return None
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._token):
            return None
        return JSONResponse(
            {"detail": "send the header `Authorization: Bearer TOKEN`"},
            401,
            {"WWW-Authenticate": "Bearer"},
        )

    @property
    def _too_long(self) -> str:
        return f"the request has more than {self._body_bytes:,} bytes"
