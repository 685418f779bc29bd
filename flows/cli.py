"""The command line: `expandr --help`."""

import importlib
import logging
import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import yaml
from pydantic import ValidationError
from rich.console import Console

from expandr_core.errors import DataError
from expandr_core.options import JointLoopOptions
from flows.presets import CONFIGS

for _name, _value in {
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin beside another process cost ten times
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # gives memory back; mimalloc keeps it
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",
    "PREFECT_LOGGING_SERVER_LEVEL": "CRITICAL",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}.items():  # before anything imports Prefect or transformers; what the user has set stays
    os.environ.setdefault(_name, _value)

out = Console()
app = typer.Typer(
    name="expandr",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""Teach a language model to expand queries the way a dense retriever likes them, and the
    retriever to profit from the expansions, round after round.

    Start with `expandr demo`. Then write a config of your own (see configs/), and `expandr run` it.
    Every result is an artifact in the store: killed or repeated runs go on from what is there.""",
)
StoreOption = Annotated[
    str,
    typer.Option(envvar="EXPANDR_STORE", help="Folder or s3:// URL that keeps every artifact."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change an option, such as `--set dpo.beta=0.2`; repeatable."),
]
SeedOption = Annotated[int | None, typer.Option(min=0, help="Change every random choice.")]


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="YAML file of options; the rest are defaults.")],
    store: StoreOption = "store",
    seed: SeedOption = None,
    changes: SetOption = None,
) -> None:
    """Run the joint loop as CONFIG says, and print what it brought.

    Run it again after a crash or a kill: every finished stage and shard is found in the store.
    """
    _run_loop(load_options(config, seed, changes or []), store)


@app.command()
def demo(store: StoreOption = "store", seed: SeedOption = None, changes: SetOption = None) -> None:
    """Run the joint loop on a small built-in world: minutes on two cores, no network, no GPU."""
    config = CONFIGS / "demo.yaml"
    if not config.is_file():
        _fail(
            f"{config} is missing; install from a clone, with `make install` or `pip install -e .`"
        )
    _run_loop(load_options(config, seed, changes or []), store)
    out.print(
        "\nThis is a demonstration: an invented world and models of a million parameters, which "
        "show the mechanism\nand not the paper's numbers. Another world: [bold]--seed 1[/bold]."
    )


@app.command()
def resume(
    run_name: Annotated[str, typer.Argument(help="Name or id of the run in Prefect.")] = "latest",
) -> None:
    """Go on with a run of the joint loop that failed, crashed, or was killed or cancelled.

    A run of a deployment goes on where its workers are; one started in a terminal goes on here.
    """
    from flows.resume import resume as resume_run
    from flows.show import print_summary

    with _complaints():
        summary = resume_run(out, run_name)
    if summary:
        print_summary(out, summary)


@app.command()
def show(
    what: Annotated[
        str,
        typer.Argument(help="Run or key, its beginning, or 'latest'."),
    ] = "latest",
    store: StoreOption = "store",
) -> None:
    """Show a run or an artifact, and walk its lineage up to the data."""
    from flows.show import show_any

    with _complaints():
        show_any(out, store, what)


@app.command()
def verify(
    key: Annotated[str, typer.Argument(help="Beginning of the keys to verify; all if empty.")] = "",
    store: StoreOption = "store",
) -> None:
    """Compare every file of the store's artifacts with its manifest; exit with 1 if any is damaged."""
    from flows.show import verify_all

    with _complaints():
        damaged = verify_all(out, store, key)
    raise typer.Exit(1 if damaged else 0)


@app.command()
def gc(
    keep_runs: Annotated[
        int | None,
        typer.Option(min=0, help="Keep this many of the latest runs, not all."),
    ] = None,
    older_than: Annotated[
        str, typer.Option(help="Let nothing younger go: 12h, 30d, 8w. Longer than any run takes!")
    ] = "7d",
    delete: Annotated[bool, typer.Option("--delete", help="Remove it, not only list it.")] = False,
    store: StoreOption = "store",
) -> None:
    """List what no kept run needs and what dead work left behind, with sizes; `--delete` removes it.

    What a kept run used stays, and all that it was made of, up to the data. Of scratch folders and
    downloads only those of this machine are seen. A run that goes on keeps what it has made, by age.
    """
    from flows.garbage import collect_garbage, parse_age
    from tasks.stage import open_store

    with _complaints():
        collect_garbage(out, open_store(store), keep_runs, parse_age(older_than), delete)


@app.command()
def search(
    question: Annotated[str, typer.Argument(help="What to search for.")],
    run_name: Annotated[str, typer.Option("--run", help="Use the models of this run.")] = "latest",
    passages: Annotated[int, typer.Option("-k", min=1, help="Passages to show.")] = 5,
    expand: Annotated[bool, typer.Option(help="Let the LLM expand the question first.")] = True,
    store: StoreOption = "store",
) -> None:
    """Search the corpus with the best LLM and retriever of a run."""
    from flows.search import search_corpus

    with _complaints():
        search_corpus(out, store, run_name, question, passages, expand)


Stage = Literal["prepare", "expand", "preferences", "dpo", "retriever", "evaluate"]


@app.command()
def stage(
    name: Annotated[Stage, typer.Argument(help="The stage.")],
    config: Annotated[Path, typer.Argument(help="YAML file, as for `expandr run`.")],
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", help="NAME=VALUE for the flow; artifacts are KEY or KEY/FILE."),
    ] = None,
    store: StoreOption = "store",
    seed: SeedOption = None,
    changes: SetOption = None,
) -> None:
    """Run one stage of the loop alone, on artifacts of earlier runs; see flows/NAME.py for its inputs.

    Example: `expandr stage dpo configs/demo.yaml --input llm=tiny_llm-3fa9 --input pairs=pairs-77c1`
    """
    options = load_options(config, seed, changes or [])
    flow = getattr(importlib.import_module(f"flows.{name}"), name)
    pairs = (text.partition("=") for text in inputs or [])
    named = {name: value for name, _, value in pairs}
    try:
        flow.validate_parameters({"options": options, "store": store, **named})
    except (TypeError, ValueError) as error:
        _fail(f"stage {name}: {error}")
    with _complaints():
        for title, artifact in flow(options=options, store=_absolute(store), **named):
            out.print(f"{title}: {artifact.key}", highlight=False)


@app.command()
def deploy(
    store: StoreOption = "",
    pool_type: Annotated[
        Literal["process", "docker", "kubernetes"], typer.Option(help="Of the work pools.")
    ] = "process",
    timezone: Annotated[str, typer.Option(help="Of new schedules.")] = "UTC",
    dead_after: Annotated[
        int,
        typer.Option(min=60, help="Seconds without a heartbeat after which a run counts as dead."),
    ] = 150,
    prune: Annotated[bool, typer.Option(help="Remove deployments that left the code.")] = True,
    reset: Annotated[
        bool,
        typer.Option("--reset", help="Undo changes made in the UI to forms, schedules, templates."),
    ] = False,
) -> None:
    """Create or update a cluster's work pools, deployments, schedules and automations.

    The server is the one that PREFECT_API_URL names. Again and again it does the same: what was paused
    stays paused, and what people set in the UI stays. EXPANDR_NOTIFY_URL, the URL of a webhook, is told
    of failures.
    """
    from deployments.changes import table_of
    from deployments.deploy import deploy as deploy_all

    with _complaints():
        changes = deploy_all(
            store,
            pool_type,
            timezone,
            timedelta(seconds=dead_after),
            os.environ.get("EXPANDR_NOTIFY_URL", ""),
            prune,
            reset,
        )
    out.print(table_of(changes), highlight=False)
    if all(change.result in ("unchanged", "kept", "skipped") for change in changes):
        out.print("\nunchanged")


@app.command()
def drain(
    pools: Annotated[list[str], typer.Argument(help="Work pools, such as gpu-train.")],
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait at most.")] = 3600,
    resume: Annotated[bool, typer.Option("--resume", help="Un-pause the pools instead.")] = False,
) -> None:
    """Pause work pools and wait until nothing goes on in them, so that their workers can be stopped.

    The pool `cpu` is drained first if it is named: its loops need the others to end.
    """
    from deployments.connection import connected
    from deployments.pools import drain as drain_pool
    from deployments.pools import set_paused

    with _complaints(), connected() as client:
        if resume:
            for pool in pools:
                set_paused(client, pool, False)
                out.print(f"{pool}: goes on", highlight=False)
            return
        deadline = time.monotonic() + timeout
        for pool in sorted(pools, key=lambda name: name != "cpu"):
            left = drain_pool(client, pool, deadline - time.monotonic(), out.print)
            if left:
                _fail(
                    f"{pool}: {len(left)} runs still go on after {timeout:g} seconds; the pool is "
                    "paused. Wait longer, or cancel them: Retry goes on from what is in the store"
                )
    named = " and ".join(pools)
    out.print(
        f"The workers of {named} may be stopped. Afterwards: expandr drain --resume {' '.join(pools)}",
        soft_wrap=True,
    )


def load_options(config: Path, seed: int | None, changes: list[str]) -> JointLoopOptions:
    """Read a YAML config and apply changes like "dpo.beta=0.2"; end with a message if it is wrong."""
    try:
        values = yaml.safe_load(config.read_text()) or {}
        for change in changes:
            path, equals, value = change.partition("=")
            if not equals:
                raise DataError(f"--set {change}: write it as name=value, such as dpo.beta=0.2")
            _set(values, path.split("."), yaml.safe_load(value))
        if seed is not None:
            values["seed"] = seed
        return JointLoopOptions(**values)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, problem['loc']))}: {problem['msg']}"
            for problem in error.errors()
        ]
        _fail(f"{config}: these options are wrong\n" + "\n".join(lines))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, DataError) as error:
        _fail(f"{config}: {error}" if str(config) not in str(error) else str(error))
    raise AssertionError("unreachable")


def _set(values: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        values = values.setdefault(name, {})
    values[path[-1]] = value


def _run_loop(options: JointLoopOptions, store: str) -> None:
    from flows.joint_loop import joint_loop
    from flows.show import print_summary

    with _complaints():
        summary = joint_loop(options=options, store=_absolute(store))
    print_summary(out, summary)


def _absolute(store: str) -> str:
    return store if "://" in store else str(Path(store).expanduser().absolute())


class _complaints:
    """End with one clear line where the input is at fault, instead of a traceback."""

    def __enter__(self) -> None:
        for name in ("prefect.task_runs", "prefect.flow_runs"):
            logging.getLogger(name).addFilter(_without_traceback)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, DataError):
            _fail(str(error))
        if isinstance(error, OSError | RuntimeError):
            _fail(f"{type(error).__name__}: {error}")


def _without_traceback(record: logging.LogRecord) -> bool:
    if record.exc_info and isinstance(record.exc_info[1], DataError):
        record.exc_info = None
        record.exc_text = None
    return True


def _fail(message: str) -> None:
    sys.stdout.flush()
    Console(stderr=True, soft_wrap=True).print(f"error: {message}", markup=False, highlight=False)
    raise typer.Exit(2)


if __name__ == "__main__":
    app()
