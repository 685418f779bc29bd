"""The HTTP interface: FastAPI's routes, what they take, and what they answer."""

import base64
import hashlib
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from expandr_core.errors import DataError
from expandr_core.serving.answers import Asked, Decision, Mode, answer, checked
from expandr_core.serving.batching import Refused, Work
from expandr_core.serving.middleware import Guard
from expandr_core.serving.opened import Kind, Opened
from expandr_core.serving.server import Limits, Server
from expandr_core.serving.writer import Unwritten

PAGE = Path(__file__).with_name("page.html")
EXAMPLES = 6  # queries of the collection that the page offers


class VersionServed(BaseModel):
    """The models that answered: a version of a registered model, and its run."""

    model: str
    version: int
    run: str


class Hit(BaseModel):
    """A passage that is found; `relevance` is what the collection's judgements say, if they do."""

    rank: int
    passage_id: str
    score: float
    title: str
    text: str
    relevance: int | None


class Answered(BaseModel):
    """What every answer tells: who answered, and how long it took."""

    served: VersionServed
    seconds: float


class Found(Answered):
    """An answer of /search; `alone` has the hits of the query alone, if they were asked for."""

    mode: Mode
    gate: Decision
    expansion: str
    remembered: bool
    hits: list[Hit]
    alone: list[Hit] | None
    judged: bool


class Expanded(Answered):
    """An answer of /expand."""

    expansion: str
    remembered: bool


class Embedded(Answered):
    """An answer of /embed: a vector for each text."""

    vectors: list[list[float]]


class Given(BaseModel):
    """What every request's body has in common: no field that is not known."""

    model_config = ConfigDict(extra="forbid")


Text = Annotated[str, AfterValidator(checked)]
Seed = Annotated[int | None, Field(ge=0, lt=2**63)]


class Search(Given):
    """A question for /search."""

    query: Text
    k: Annotated[int, Field(ge=1)] = 10
    mode: Mode = "auto"
    seed: Seed = None
    compare: bool = False


class Expand(Given):
    """A query for /expand."""

    query: Text
    seed: Seed = None


class Embed(Given):
    """Texts for /embed."""

    texts: Annotated[list[Text], Field(min_length=1)]
    kind: Kind = "query"


def make_app(server: Server, token: str = "") -> FastAPI:
    """Make the application.

    Args:
        server: answers.
        token: that every request but those for the page and for /health must bring; empty: none.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with server.running():
            yield

    app = FastAPI(title="ExpandR", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(
        Guard, metrics=server.metrics, token=token, body_bytes=server.limits.body_bytes
    )
    _add_errors(app)
    _add_questions(app, server, server.limits)
    _add_facts(app, server)
    return app


def _add_questions(app: FastAPI, server: Server, limits: Limits) -> None:
    """Add the routes that ask the models."""

    async def ask(work: Work, opened: Opened, item: Any) -> tuple[Any, dict[str, Any]]:
        """Return what the models say, and what every answer tells."""
        start = time.perf_counter()
        found = await server.batcher.submit(work, opened, item)
        return found, {"served": _version(opened), "seconds": time.perf_counter() - start}

    @app.post("/search", response_model=Found)
    async def search(asked: Search) -> Response:
        """Find the k nearest passages of a query.

        By default the gate decides whether the query is expanded, and every query is if there is no
        gate. Without a language model, the distilled query encoder searches, or the query alone.
        """
        limits.check([asked.query], asked.k)
        opened = server.opened
        mode = _mode(opened, asked.mode)
        question = Asked(asked.query, asked.k, mode, asked.seed, asked.compare)
        found, told = await ask(answer, opened, question)
        server.metrics.answered(found)
        judged = opened.judged.get(asked.query, {})
        said = Found(
            mode=mode,
            gate=found.decision,
            expansion=found.expansion,
            remembered=found.remembered,
            hits=_hits(opened, found.hits, judged),
            alone=None if found.alone is None else _hits(opened, found.alone, judged),
            judged=bool(judged),
            **told,
        )
        return _json(said)

    @app.post("/expand", response_model=Expanded)
    async def expand(asked: Expand) -> Response:
        """Write a query's expansion: the likeliest text, or, with a seed, a sampled one."""
        limits.check([asked.query])
        written, told = await ask(Opened.expand, server.opened, (asked.query, asked.seed))
        server.metrics.expanded(written.remembered)
        return _json(Expanded(expansion=written.text, remembered=written.remembered, **told))

    @app.post("/embed", response_model=Embedded)
    async def embed(asked: Embed) -> Response:
        """Return the vectors of texts, as search uses them."""
        limits.check(asked.texts)
        item = tuple(asked.texts), asked.kind
        vectors, told = await ask(Opened.embed, server.opened, item)
        return _json(Embedded(vectors=vectors.tolist(), **told))


def _add_facts(app: FastAPI, server: Server) -> None:
    """Add the routes that say what is there."""
    page = PAGE.read_text(encoding="utf-8")
    policy = "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; "
    policy += "form-action 'none'; frame-ancestors 'none'"
    for kind in ("script", "style"):
        for inside in re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.S):
            digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
            policy += f"; {kind}-src 'sha256-{digest}'"
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"}

    @app.get("/", include_in_schema=False)
    async def try_it() -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Answer as long as requests are."""
        if server.stopping:
            raise Refused(503, "the server stops", 5)
        return {"status": "ready"}

    @app.get("/lineage")
    async def lineage() -> dict[str, Any]:
        """Say what is served, and all that it was made from."""
        opened, served = server.opened, server.opened.served
        queries = sorted(opened.judged)
        return {
            "served": _version(opened).model_dump(),
            "modes": [
                mode for mode in ("auto", "expanded", "alone", "distilled") if _has(opened, mode)
            ],
            "models": {role: each.key for role, each in served.artifacts().items()},
            "digests": {role: each.digest for role, each in served.artifacts().items()},
            "prompt": served.options.expand.prompt.model_dump(),
            "queries": queries[:: len(queries) // EXAMPLES or 1][:EXAMPLES],
            "artifacts": opened.lineage,
        }

    @app.get("/metrics")
    async def metrics() -> Response:
        """Return the metrics in Prometheus's format."""
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4")


def _add_errors(app: FastAPI) -> None:
    """Answer errors with their reasons, and never with what was sent."""

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        reasons = [
            f"{'.'.join(map(str, each['loc'][1:])) or 'body'}: {each['msg']}"[:300]
            for each in error.errors()[:10]
        ]
        return JSONResponse({"detail": "; ".join(reasons)}, 422)

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        headers = {"Retry-After": str(error.seconds)} if error.seconds else {}
        return JSONResponse({"detail": error.reason}, error.status, headers)

    @app.exception_handler(DataError)
    async def unanswerable(_: Request, error: DataError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    @app.exception_handler(Unwritten)
    @app.exception_handler(RuntimeError)  # such as a lack of memory
    async def in_trouble(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error)[:300]}, 503, {"Retry-After": "5"})


def _json(answer: BaseModel) -> Response:
    """Send an answer as it is; FastAPI would validate it once more."""
    return Response(answer.model_dump_json(), media_type="application/json")


def _has(opened: Opened, mode: Mode) -> bool:
    needed = {"expanded": opened.writer, "distilled": opened.student}
    return mode not in needed or needed[mode] is not None


def _mode(opened: Opened, mode: Mode) -> Mode:
    """Return how a query is searched with: without a language model, what comes nearest."""
    if mode == "auto" and not opened.writer:
        return "distilled" if opened.student else "alone"
    return mode


def _version(opened: Opened) -> VersionServed:
    served = opened.served
    return VersionServed(model=served.model, version=served.version, run=served.run)


def _hits(opened: Opened, run: Any, judged: dict[str, int]) -> list[Hit]:
    rows = run.drop_columns("query_id").to_pylist()
    passages = opened.passages(row["passage_id"] for row in rows)
    return [
        Hit(**row, title=own.title, text=own.text, relevance=judged.get(own.passage_id))
        for row, own in zip(rows, passages, strict=True)
    ]
