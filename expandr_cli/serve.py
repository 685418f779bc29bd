"""The command `expandr serve`: search, expansions and vectors over HTTP."""

import errno
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from expandr_cli.terminal import StoreOption, absolute, notify, user_errors
from expandr_core.errors import DataError
from expandr_core.store.store import Store

if TYPE_CHECKING:
    from expandr_core.options.generation import EndpointOptions
    from expandr_core.serving.opened import Opened
    from expandr_core.serving.writer import Memory, Writer
    from flows.run_record import RunRecord

app = typer.Typer()
TOKEN = "EXPANDR_TOKEN"
KEY = "OPENAI_API_KEY"  # which the client of the LLM's server reads
GRACE_SECONDS = 60  # for requests in progress, when the server is stopped


RunOption = Annotated[
    str,
    typer.Option(
        "--run",
        help="Alias (champion, MODEL/ALIAS, MODEL/VERSION), run, or 'latest'; by default the champion, "
        "and the latest run as long as there is none. When an alias moves, what it names then is "
        "served, without a restart.",
    ),
]
LLMOption = Annotated[
    str,
    typer.Option(
        help="Where the LLM runs: 'here', in this process; the URL of an OpenAI-compatible server, such "
        "as http://host:8000/v1, whose key is read from OPENAI_API_KEY; or 'none'.",
    ),
]
APIOption = Annotated[
    Literal["completions", "chat"], typer.Option(help="API of that server; see llm.endpoint.api.")
]
TokenOption = Annotated[
    Path | None,
    typer.Option(
        help=f"File with the token that requests must bring; by default ${TOKEN}, if it is set."
    ),
]


@app.command()
def serve(
    run_name: RunOption = "",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8080,
    llm: LLMOption = "here",
    llm_model: Annotated[str, typer.Option(help="The LLM's name on that server.")] = "",
    llm_api: APIOption = "completions",
    llm_timeout: Annotated[
        float,
        typer.Option(
            min=0.1, help="Seconds to wait for that server; then the answer is status 503."
        ),
    ] = 10,
    max_query_chars: Annotated[int, typer.Option(min=1, help="Longest query or text.")] = 2000,
    max_k: Annotated[int, typer.Option(min=1, help="Most passages of an answer.")] = 100,
    max_queue: Annotated[
        int, typer.Option(min=1, help="Requests that may wait; more are refused with status 429.")
    ] = 1000,
    max_batch: Annotated[int, typer.Option(min=1, help="Requests computed together.")] = 64,
    cache: Annotated[int, typer.Option(min=1, help="Expansions to remember.")] = 10_000,
    poll: Annotated[
        float, typer.Option(min=0.05, help="Seconds between two looks for a new champion.")
    ] = 10,
    token_file: TokenOption = None,
    store: StoreOption = "store",
) -> None:
    """Serve the champion, or the models of a run: `/search`, `/expand`, `/embed`, and a page to try it.

    SIGTERM or Ctrl-C ends it as soon as the requests in progress are answered.
    """
    with user_errors():
        from cachetools import LRUCache

        from expandr_core.serving.app import make_app
        from expandr_core.serving.server import Limits, Server
        from tasks.stage import open_store

        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
        logging.getLogger("expandr_core.serving").setLevel(logging.INFO)
        token = _token(token_file)
        opened = open_store(absolute(store))
        endpoint = _endpoint(llm, llm_model, llm_api, llm_timeout)
        find = _Finder(opened, run_name, llm, endpoint, LRUCache(cache))
        door = _door(host, port)
        limits = Limits(max_query_chars, max_k, waiting=max_queue, together=max_batch)
        server = Server(find.first(), limits, find.newer, poll)  # which alone holds the models
        _warn_of_open_doors(host, token)
        place = f"http://{f'[{host}]' if ':' in host else host}:{door.getsockname()[1]}"
        notify(f"serving run {server.opened.served.run} at {place}; Ctrl-C ends it")
    _listen(make_app(server, token), door)


def _door(host: str, port: int) -> socket.socket:
    """Listen at an address, before anything is loaded; who comes early waits."""
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048
        )
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise DataError(f"port {port} of {host} is in use; name another by --port") from error
        raise DataError(f"--host {host} --port {port}: cannot listen there ({error})") from error


def _listen(application: Any, door: socket.socket) -> None:
    """Answer requests until a signal comes, and then those that are in progress."""
    import uvicorn

    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises its signal again at its end
        signal.signal(number, lambda *_: None)
    config = uvicorn.Config(
        application,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    uvicorn.Server(config).run(sockets=[door])


class _Finder:
    """Finds what is to be served in a store, and opens it."""

    def __init__(
        self,
        store: Store,
        run_name: str,
        llm: str,
        endpoint: "EndpointOptions | None",
        memory: "Memory",
    ):
        self._store, self._run_name, self._llm = store, run_name, llm
        self._endpoint, self._memory = endpoint, memory

    def named(self, say: Callable[[str], None]) -> "tuple[RunRecord, str, int]":
        """Return the run to serve, and the model and version that it is; "" and 0 if it is none."""
        from expandr_core.store.registered_model import CHAMPION
        from expandr_core.store.registry import find_version
        from flows.champions import chosen_run

        run = chosen_run(self._store, self._run_name, say)
        found = find_version(self._store, self._run_name or CHAMPION)
        return (run, found[0], found[1].number) if found else (run, "", 0)

    def first(self) -> "Opened":
        """Open what is to be served now, and load it."""
        opened = self._opened(*self.named(notify))
        if opened.writer:
            opened.writer.load()
        if opened.writer and self._endpoint:
            _try_server(opened.writer)
        opened.load()
        return opened

    def newer(self, before: "Opened") -> "Opened | None":
        """Open what is to be served now, unless it is what is served already."""
        run, model, version = self.named(lambda _: None)
        if (model, version, run.name) == before.served[:3]:
            return None
        return self._opened(run, model, version, before)

    def _opened(
        self, run: "RunRecord", model: str, version: int, before: "Opened | None" = None
    ) -> "Opened":
        """Open models; a language model that is open already is used again."""
        from expandr_cli.search import served
        from expandr_core.serving.opened import Opened
        from expandr_core.serving.writer import Writer

        what = served(self._store, run, model, version)
        if self._llm == "none":
            return Opened(self._store, what, None)
        writer = Writer(self._store, run.models["llm"], run.options, self._endpoint, self._memory)
        if before and before.writer and before.writer.identity == writer.identity:
            writer = before.writer
        return Opened(self._store, what, writer)


def _try_server(writer: "Writer") -> None:
    """Ask the LLM's server for a text; if it is only down, which may pass, say so and go on.

    Raises:
        DataError: if it refuses us, such as for a wrong key or an unknown model.
    """
    from expandr_core.serving.writer import Unwritten

    try:
        writer.write([("is the server there?", None)])
    except Unwritten as error:
        if isinstance(error.__cause__, DataError):
            raise error.__cause__ from None
        notify(f"warning: {error}; queries that need it get status 503")


def _endpoint(llm: str, model: str, api: Any, seconds: float) -> "EndpointOptions | None":
    from expandr_core.options.generation import EndpointOptions

    if llm in ("here", "none"):
        return None
    if not llm.startswith(("http://", "https://")) or not model:
        raise DataError(
            f"--llm {llm}: give 'here', 'none', or the URL of a server, and then --llm-model, its "
            "name for the LLM"
        )
    if not os.environ.get(KEY):
        raise DataError(f"--llm {llm}: set {KEY}, to any word if that server needs no key")
    # people wait for the answer: they hear of trouble at once, and may ask again
    return EndpointOptions(url=llm, model=model, api=api, retries=0, timeout_seconds=seconds)


def _token(file: Path | None) -> str:
    """Return the token that requests must bring; empty if none is set."""
    if file is None and TOKEN not in os.environ:
        return ""
    try:
        token = file.read_text(encoding="utf-8") if file else os.environ[TOKEN]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--token-file {file}: cannot be read ({error})") from error
    if not token.strip():
        where = f"--token-file {file}" if file else f"${TOKEN}"
        raise DataError(f"{where} is empty; write a token there, or leave it out to serve without")
    return token.strip()


def _warn_of_open_doors(host: str, token: str) -> None:
    try:
        is_private = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_private = host == "localhost"
    if not token and not is_private:
        notify(f"warning: whoever reaches {host} can use it; set ${TOKEN} or --token-file")
